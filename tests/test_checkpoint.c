/* Chapter 7: safetensors, config.json, model directories, training state. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

/* ---- helpers: a context that counts, files made by hand ---- */
static tt_context *open_context(tt_test_memory *memory) {
    tt_desc desc = TT_INIT;
    *memory = tt_test_memory_none();
    desc.allocator = tt_test_allocator(memory);
    desc.n_threads = 1;
    return tt_create(&desc);
}
/* Without sync and rename, for the loops that write thousands of files. */
static void write_bytes(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    TT_CHECK(file != NULL);
    if (!file) { return; }
    TT_CHECK(fwrite(bytes, 1, size, file) == size);
    fclose(file);
}
/* header length, header, data */
static size_t put_safetensors(char *out, const char *header, const void *data, size_t size) {
    size_t n = strlen(header), i;
    for (i = 0; i < 8; i++) { out[i] = (char)(unsigned char)((uint64_t)n >> (8 * i)); }
    memcpy(out + 8, header, n);
    if (size) { memcpy(out + 8 + n, data, size); }
    return 8 + n + size;
}
static tt_safetensors *open_made(tt_context *ctx, const char *header, const void *data, size_t size) {
    static char bytes[1 << 16];
    const char *path = tt_test_tmp("made.safetensors");
    write_bytes(path, bytes, put_safetensors(bytes, header, data, size));
    tt_error_clear(ctx);
    return tt_safetensors_open(ctx, path);
}
static void check_refused(const char *header, size_t size, const char *part1, const char *part2) {
    static const char data[256];
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_safetensors *file = open_made(ctx, header, data, size);
    if (!TT_CHECK(file == NULL)) { printf("  accepted: %s\n", header); }
    TT_CHECK_CONTAINS(tt_error(ctx), "made.safetensors");
    TT_CHECK_CONTAINS(tt_error(ctx), part1);
    TT_CHECK_CONTAINS(tt_error(ctx), part2);
    tt_safetensors_close(file);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* Opens and reads whatever is there; nothing may happen but a result or an error text. */
static int read_all(tt_context *ctx, const char *path) {
    tt_safetensors *file;
    int i, good = 1;
    tt_error_clear(ctx);
    file = tt_safetensors_open(ctx, path);
    TT_CHECK((file == NULL) == (tt_error(ctx)[0] != 0));
    if (!file) { return 0; }
    for (i = 0; i < tt_safetensors_count(file); i++) {
        tt_safetensors_info info = tt_safetensors_info_get(file, i);
        float *values = (float *)malloc(info.size * sizeof(float) + 1);
        TT_CHECK(values != NULL && info.name != NULL && info.ndim >= 0 && info.ndim <= 8);
        TT_CHECK_INT(tt_safetensors_find(file, info.name), i);
        if (values && tt_safetensors_read(file, i, values) != TT_OK) { good = 0; TT_CHECK(tt_error(ctx)[0] != 0); }
        free(values);
    }
    tt_safetensors_close(file);
    return good;
}
static size_t load_bytes(const char *path, char *out, size_t capacity) {
    FILE *file = fopen(path, "rb");
    size_t n = file ? fread(out, 1, capacity, file) : 0;
    if (file) { fclose(file); }
    TT_CHECK(n > 0 && n < capacity);
    return n;
}

/* ---- safetensors ---- */
TT_TEST(safetensors_types) {
    static const unsigned char data[] = {
        0, 0, 0xc0, 0x3f, 0, 0, 0x80, 0xff,                              /* F32 1.5, -inf                 */
        0x00, 0x3c, 0x01, 0x00, 0xff, 0x7b, 0x00, 0xfc,                  /* F16 1, 2^-24, 65504, -inf     */
        0xc0, 0x3f, 0x01, 0x00, 0x80, 0x7f, 0x80, 0xc0,                  /* BF16 1.5, 2^-133, inf, -4     */
        7, 0, 0, 0, 0, 0, 0, 0,                                          /* I64 7                         */
        1, 0, 1,                                                         /* BOOL                          */
    };
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    float v[4];
    tt_safetensors_info info;
    tt_safetensors *file = open_made(ctx, "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"h\\u00e9\"},\"f32\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
        "\"f16\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[8,16]},\"bf16\":{\"dtype\":\"BF16\",\"shape\":[2,1,2],\"data_offsets\":[16,24]},"
        "\"i64\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]},\"none\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[32,32]},"
        "\"bool\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[32,35]}}   ", data, sizeof data);
    if (!file) { printf("  %s\n", tt_error(ctx)); }
    TT_REQUIRE(file != NULL);
    TT_CHECK_INT(tt_safetensors_count(file), 6);
    TT_CHECK_STR(tt_safetensors_metadata(file, "format"), "pt");
    TT_CHECK_STR(tt_safetensors_metadata(file, "note"), "h\xc3\xa9");
    TT_CHECK(tt_safetensors_metadata(file, "state") == NULL);
    TT_CHECK_INT(tt_safetensors_find(file, "__metadata__"), -1);
    TT_CHECK_INT(tt_safetensors_find(file, "f3"), -1);
    info = tt_safetensors_info_get(file, tt_safetensors_find(file, "f32"));
    TT_CHECK_STR(info.name, "f32");
    TT_CHECK_INT(info.dtype, TT_F32);
    TT_CHECK_INT(info.ndim, 2);
    TT_CHECK_INT(info.shape[0] * 10 + info.shape[1], 12);
    TT_CHECK_INT(info.size, 2);
    TT_CHECK_OK(ctx, tt_safetensors_read(file, tt_safetensors_find(file, "f32"), v));
    TT_CHECK(v[0] == 1.5f && v[1] == -HUGE_VALF);
    TT_CHECK_INT(tt_safetensors_info_get(file, tt_safetensors_find(file, "f16")).dtype, TT_F16);
    TT_CHECK_OK(ctx, tt_safetensors_read(file, tt_safetensors_find(file, "f16"), v));
    TT_CHECK(v[0] == 1.0f && v[1] == ldexpf(1, -24) && v[2] == 65504.0f && v[3] == -HUGE_VALF);
    TT_CHECK_INT(tt_safetensors_info_get(file, tt_safetensors_find(file, "bf16")).dtype, TT_BF16);
    TT_CHECK_OK(ctx, tt_safetensors_read(file, tt_safetensors_find(file, "bf16"), v));
    TT_CHECK(v[0] == 1.5f && v[1] == ldexpf(1, -133) && v[2] == HUGE_VALF && v[3] == -4.0f);
    TT_CHECK_INT(tt_safetensors_info_get(file, tt_safetensors_find(file, "i64")).ndim, 0);
    TT_CHECK_INT(tt_safetensors_info_get(file, tt_safetensors_find(file, "none")).size, 0);
    TT_CHECK_OK(ctx, tt_safetensors_read(file, tt_safetensors_find(file, "none"), v));
    if (tt_safetensors_read(file, tt_safetensors_find(file, "i64"), v) == TT_OK) { TT_CHECK_NEAR(v[0], 7, 0); }
    else { TT_CHECK_CONTAINS(tt_error(ctx), "i64"); TT_CHECK_CONTAINS(tt_error(ctx), "I64"); }
    TT_CHECK(tt_safetensors_info_get(file, -1).name == NULL);
    TT_CHECK(tt_safetensors_info_get(file, 6).name == NULL);
    TT_CHECK_INT(tt_safetensors_read(file, 6, v), TT_ERR_ARG);
    TT_CHECK_INT(tt_safetensors_read(file, -1, v), TT_ERR_ARG);
    tt_safetensors_close(file);
    file = open_made(ctx, "{}", NULL, 0);
    TT_REQUIRE(file != NULL);
    TT_CHECK_INT(tt_safetensors_count(file), 0);
    tt_safetensors_close(file);
    tt_safetensors_close(NULL);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
#define ENTRY(name, dtype, shape, begin, end) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"
TT_TEST(safetensors_refuses) {
    check_refused("{" ENTRY("w", "F33", "[2]", "0", "8") "}", 8, "w", "F33");
    check_refused("{" ENTRY("w", "F32", "[3]", "0", "8") "}", 8, "w", "8");
    check_refused("{" ENTRY("w", "F32", "[2]", "0", "8") "}", 4, "w", "4");                 /* cut off     */
    check_refused("{" ENTRY("w", "F32", "[2]", "0", "8") "}", 12, "8", "12");               /* goes on     */
    check_refused("{" ENTRY("a", "F32", "[2]", "0", "8") "," ENTRY("w", "F32", "[2]", "4", "12") "}", 12, "w", "4");
    check_refused("{" ENTRY("a", "F32", "[2]", "0", "8") "," ENTRY("w", "F32", "[1]", "12", "16") "}", 16, "w", "12");
    check_refused("{" ENTRY("w", "F32", "[1]", "0", "4") "," ENTRY("w", "F32", "[1]", "4", "8") "}", 8, "w", "twice");
    check_refused("{" ENTRY("w", "F32", "[2]", "8", "0") "}", 8, "w", "data_offsets");
    check_refused("{" ENTRY("w", "F32", "[-2]", "0", "8") "}", 8, "w", "-2");
    check_refused("{" ENTRY("w", "F32", "[2.5]", "0", "8") "}", 8, "w", "2.5");
    check_refused("{" ENTRY("w", "F32", "[1e300]", "0", "8") "}", 8, "w", "shape");
    check_refused("{" ENTRY("w", "F32", "[4294967296,4294967296,4294967296]", "0", "8") "}", 8, "w", "shape");
    check_refused("{" ENTRY("w", "F64", "[2305843009213693953]", "0", "8") "}", 8, "w", "");
    check_refused("{" ENTRY("w", "F64", "[1073741824,1073741824]", "0", "8") "}", 8, "w", "");
    check_refused("{" ENTRY("w", "F32", "[1,1,1,1,1,1,1,1,2]", "0", "8") "}", 8, "w", "8");
    check_refused("{" ENTRY("w", "F32", "2", "0", "8") "}", 8, "w", "shape");
    check_refused("{" ENTRY("w\\u0000x", "F32", "[2]", "0", "8") "}", 8, "w", "");
    check_refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "w", "data_offsets");
    check_refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4,8]}}", 8, "w", "data_offsets");
    check_refused("{\"w\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "w", "dtype");
    check_refused("{\"w\":5}", 8, "w", "");
    check_refused("[1]", 0, "header", "");
    check_refused("{\"w\":", 0, "header", "JSON");
    check_refused("", 0, "header", "");
    check_refused("{\"__metadata__\":5}", 0, "__metadata__", "");
}
TT_TEST(safetensors_header_lengths) {
    static const uint64_t lengths[] = {3, 100, 100000001, 0x7fffffff, 0xffffffff, 0x100000000u, (uint64_t)1 << 63, UINT64_MAX - 7, UINT64_MAX};
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("length.safetensors");
    char bytes[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    size_t i, k;
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (k = 0; k < 8; k++) { bytes[k] = (char)(unsigned char)(lengths[i] >> (8 * k)); }
        write_bytes(path, bytes, sizeof bytes);
        TT_CHECK(tt_safetensors_open(ctx, path) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "header length");
    }
    for (i = 0; i < 8; i++) {
        write_bytes(path, bytes, i);
        TT_CHECK(tt_safetensors_open(ctx, path) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), path);
    }
    TT_CHECK(tt_safetensors_open(ctx, "build/tmp") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "build/tmp");
    TT_CHECK(tt_safetensors_open(ctx, "build/tmp/no-such-file") == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_IO);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* Values and depth of a header are limited before memory is asked for. */
TT_TEST(json_limits) {
    size_t n = ((size_t)1 << 23) + 1, i;
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    char *text = (char *)malloc(2 * n + 2);
    TT_REQUIRE(text != NULL);
    text[0] = '[';
    for (i = 0; i < n; i++) { text[2 * i + 1] = '0'; text[2 * i + 2] = ','; }
    text[2 * n] = ']';
    TT_CHECK(tt_json_parse(ctx, text, 2 * n + 1) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "more than 8388608 values");
    memset(text, '[', 200);
    TT_CHECK(tt_json_parse(ctx, text, 200) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "deeper than 128");
    TT_CHECK(tt_memory_get(ctx).peak_bytes < ((size_t)1 << 24));
    free(text);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* ---- training state ---- */
typedef struct state { tt_tensor *tensors[3]; tt_named named[3]; } state;
static int state_create(state *s, tt_context *ctx, float begin) {
    static const char *const names[3] = {"scalar", "model.w", "adamw.\"m\"\n\xc3\xa9"};
    static const int shapes[3][2] = {{1, 1}, {3, 5}, {7, 1}}, ndims[3] = {0, 2, 1};
    int i, k;
    for (i = 0; i < 3; i++) {
        float values[15];
        s->tensors[i] = tt_tensor_create(ctx, TT_F32, ndims[i], shapes[i], names[i]);
        s->named[i].name = names[i];
        s->named[i].tensor = s->tensors[i];
        for (k = 0; k < 15; k++) { values[k] = begin + (float)(i * 100 + k) / 3.0f; }
        if (!s->tensors[i] || tt_tensor_set(s->tensors[i], values) != TT_OK) { return 0; }
    }
    return 1;
}
static void state_destroy(state *s) {
    int i;
    for (i = 0; i < 3; i++) { tt_tensor_destroy(s->tensors[i]); }
}
static int state_is(const state *s, float begin) {
    int i, k, same = 1;
    for (i = 0; i < 3; i++) {
        float values[15];
        tt_tensor_get(s->tensors[i], values);
        for (k = 0; k < (int)s->tensors[i]->size; k++) { same = same && values[k] == begin + (float)(i * 100 + k) / 3.0f; }
    }
    return same;
}
static const char state_json[] = "{\"step\": 12, \"text\": \"a\\n\\\"b\\\" \xc3\xa9\"}";

TT_TEST(state_round_trip) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors");
    state a, b;
    tt_text json = TT_INIT;
    json.ctx = ctx;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, -5));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, state_json));
    TT_CHECK(read_all(ctx, path));
    TT_CHECK_OK(ctx, tt_text_append(&json, "before", 6));
    TT_CHECK_OK(ctx, tt_state_load(ctx, path, b.named, 3, &json));
    TT_CHECK(state_is(&b, 1));
    TT_CHECK_CONTAINS(json.data, "before");
    TT_CHECK_STR(json.data + 6, state_json);
    TT_CHECK_OK(ctx, tt_state_load(ctx, path, b.named, 3, NULL));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, NULL, 0, "only text"));
    json.size = 0;
    TT_CHECK_OK(ctx, tt_state_load(ctx, path, NULL, 0, &json));
    TT_CHECK_STR(json.data, "only text");
    tt_text_free(&json);
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* The data begin at a multiple of 8, and the header is what other readers expect. */
TT_TEST(state_file_layout) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors");
    static char bytes[4096];
    size_t n, header;
    state a;
    tt_json *root;
    TT_REQUIRE(state_create(&a, ctx, 1));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, state_json));
    n = load_bytes(path, bytes, sizeof bytes);
    header = (unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1];
    TT_CHECK_INT(header % 8, 0);
    TT_CHECK_INT(n, 8 + header + 4 * (1 + 15 + 7));
    root = tt_json_parse(ctx, bytes + 8, header);
    TT_REQUIRE(root != NULL);
    TT_CHECK_STR(tt_json_text(tt_json_get(root, "__metadata__"), "format", ""), "pt");
    TT_CHECK_STR(tt_json_text(tt_json_get(root, "__metadata__"), "state", ""), state_json);
    TT_CHECK_STR(tt_json_text(tt_json_get(root, "model.w"), "dtype", ""), "F32");
    tt_json_free(ctx, root);
    state_destroy(&a);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(state_refuses_what_does_not_fit) {
    static const int shape[2] = {5, 3};
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors");
    state a, b;
    tt_named other[3];
    tt_tensor *turned = tt_tensor_create(ctx, TT_F32, 2, shape, "turned"), *half = tt_tensor_create(ctx, TT_F16, 2, shape, "half");
    tt_text json = TT_INIT;
    json.ctx = ctx;
    TT_REQUIRE(turned && half && state_create(&a, ctx, 1) && state_create(&b, ctx, -5));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, state_json));
    memcpy(other, b.named, sizeof other);
    other[2].name = "nobody";
    TT_CHECK_INT(tt_state_load(ctx, path, other, 3, &json), TT_ERR_FILE);
    TT_CHECK_CONTAINS(tt_error(ctx), "nobody");
    memcpy(other, b.named, sizeof other);
    other[1].tensor = turned;
    TT_CHECK_INT(tt_state_load(ctx, path, other, 3, &json), TT_ERR_FILE);
    TT_CHECK_CONTAINS(tt_error(ctx), "model.w");
    TT_CHECK_CONTAINS(tt_error(ctx), "[3,5]");
    TT_CHECK_CONTAINS(tt_error(ctx), "[5,3]");
    TT_CHECK_INT(tt_state_load(ctx, path, b.named, 2, &json), TT_ERR_FILE);
    memcpy(other, b.named, sizeof other);
    other[2] = other[1];                                               /* one twice, one forgotten */
    TT_CHECK(tt_state_load(ctx, path, other, 3, &json) != TT_OK);
    TT_CHECK(state_is(&b, -5));
    TT_CHECK_INT(json.size, 0);
    remove(tt_test_tmp("twice.safetensors"));
    TT_CHECK(tt_state_save(ctx, tt_test_tmp("twice.safetensors"), other, 3, "") != TT_OK);
    TT_CHECK(!tt_file_exists(tt_test_tmp("twice.safetensors")));
    other[2].name = "half";
    other[2].tensor = half;
    TT_CHECK(tt_state_save(ctx, path, other, 3, "") != TT_OK);
    TT_CHECK_OK(ctx, tt_state_load(ctx, path, b.named, 3, NULL));      /* the old file stands */
    TT_CHECK(state_is(&b, 1));
    TT_CHECK_INT(tt_state_load(ctx, tt_test_tmp("no-such-file"), b.named, 3, NULL), TT_ERR_IO);
    tt_text_free(&json);
    state_destroy(&a);
    state_destroy(&b);
    tt_tensor_destroy(turned);
    tt_tensor_destroy(half);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(state_each_prefix_and_bit_flip) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors"), *broken = tt_test_tmp("broken.safetensors"), *old = tt_test_tmp("old.safetensors");
    static char bytes[4096];
    size_t n, header, i;
    state a, b;
    tt_text json = TT_INIT;
    json.ctx = ctx;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, -5));
    TT_CHECK_OK(ctx, tt_state_save(ctx, old, b.named, 3, ""));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, state_json));
    n = load_bytes(path, bytes, sizeof bytes);
    header = 8 + (unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1];
    for (i = 0; i < n; i++) {
        write_bytes(broken, bytes, i);
        TT_CHECK(!read_all(ctx, broken));
        TT_CHECK(tt_state_load(ctx, broken, b.named, 3, NULL) != TT_OK);
    }
    TT_CHECK(state_is(&b, -5));
    for (i = 0; i < 8 * n; i++) {                                      /* detected, or harmless: then all is as it was saved */
        tt_status status;
        json.size = 0;
        bytes[i / 8] = (char)(bytes[i / 8] ^ (1 << i % 8));
        write_bytes(broken, bytes, n);
        if (i < 8 * header) { read_all(ctx, broken); }
        status = tt_state_load(ctx, broken, b.named, 3, &json);
        TT_CHECK(status == TT_OK || status == TT_ERR_FILE);
        TT_CHECK(state_is(&b, status == TT_OK ? 1 : -5));
        TT_CHECK(status != TT_OK || (i < 8 * header && json.data && strcmp(json.data, state_json) == 0));
        if (status != TT_OK) { TT_CHECK_CONTAINS(tt_error(ctx), "broken.safetensors"); }
        if (status == TT_OK) { TT_CHECK_OK(ctx, tt_state_load(ctx, old, b.named, 3, NULL)); }
        bytes[i / 8] = (char)(bytes[i / 8] ^ (1 << i % 8));
    }
    tt_text_free(&json);
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* What other programs make of a state: no checksum, the tensors in another order. A state edited by hand keeps its sum. */
TT_TEST(state_written_by_another_program) {
    static const char *const scalar = ENTRY("scalar", "F32", "[]", "0", "4"), *const moved = ENTRY("model.w", "F32", "[3,5]", "32", "92");
    static const char *const last = ENTRY("adamw.\\\"m\\\"\\n\xc3\xa9", "F32", "[7]", "4", "32");
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors"), *other = tt_test_tmp("other.safetensors");
    static char bytes[4096];
    char header[1000], sum[64], data[92];
    state a, b;
    tt_safetensors *file;
    int which;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, -5));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, "x"));
    file = tt_safetensors_open(ctx, path);
    TT_REQUIRE(file != NULL && tt_safetensors_metadata(file, "checksum") != NULL);
    snprintf(sum, sizeof sum, "\"checksum\":\"%s\",", tt_safetensors_metadata(file, "checksum"));
    tt_safetensors_close(file);
    tt_tensor_get(a.tensors[0], (float *)(void *)data);
    tt_tensor_get(a.tensors[2], (float *)(void *)(data + 4));
    tt_tensor_get(a.tensors[1], (float *)(void *)(data + 32));
    for (which = 0; which < 3; which++) {
        snprintf(header, sizeof header, "{\"__metadata__\":{%s\"state\":\"%s\"},%s,%s,%s}", which ? sum : "", which < 2 ? "x" : "y", scalar, moved, last);
        write_bytes(other, bytes, put_safetensors(bytes, header, data, sizeof data));
        TT_CHECK_INT(tt_state_load(ctx, other, b.named, 3, NULL), which < 2 ? TT_OK : TT_ERR_FILE);
        if (which < 2) { TT_CHECK(state_is(&b, 1)); }
    }
    TT_CHECK_CONTAINS(tt_error(ctx), "other.safetensors: damaged: its checksum is");
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(state_each_failing_allocation) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors");
    state a, b;
    tt_text json = TT_INIT;
    long n, blocks;
    json.ctx = ctx;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, 2));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, "{}"));
    blocks = memory.live_blocks;
    for (n = 1; n < 100; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_state_save(ctx, path, b.named, 3, "{}");
        memory.fail_at = 0;
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
        TT_CHECK_OK(ctx, tt_state_load(ctx, path, a.named, 3, NULL));  /* the old file stands */
        TT_CHECK(state_is(&a, 1));
    }
    TT_CHECK(n > 5 && n < 100);
    for (n = 1; n < 100; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_state_load(ctx, path, a.named, 3, &json);
        memory.fail_at = 0;
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
        TT_CHECK_INT(memory.live_blocks, blocks + (json.data != NULL));
        TT_CHECK(state_is(&a, 1));                                     /* all or nothing */
        TT_CHECK_INT(json.size, 0);
    }
    TT_CHECK(n > 5 && n < 100);
    TT_CHECK(state_is(&a, 2));
    tt_text_free(&json);
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(state_full_disk_leaves_the_old_file) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("full.safetensors");
    state a, b;
    tt_status status;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, 2));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, "{}"));
    if (tt_test_disk(100)) {
        status = tt_state_save(ctx, path, b.named, 3, "{}");
        tt_test_disk(-1);
        TT_CHECK_INT(status, TT_ERR_IO);
        TT_CHECK_CONTAINS(tt_error(ctx), "full.safetensors");
        TT_CHECK_OK(ctx, tt_state_load(ctx, path, b.named, 3, NULL));
        TT_CHECK(state_is(&b, 1));
    } else { printf("  left out: no limit on the size of files\n"); }
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- config.json ---- */
static tt_status parse(tt_context *ctx, const char *json, tt_model_config *c) {
    memset(c, 0, sizeof *c);
    tt_error_clear(ctx);
    return tt_model_config_parse(ctx, json, strlen(json), c);
}
#define SIZES "\"vocab_size\":96,\"hidden_size\":64,\"intermediate_size\":160,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"max_position_embeddings\":128"
TT_TEST(config_reads_each_family) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config c;
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"llama\"," SIZES ",\"num_key_value_heads\":2,\"rms_norm_eps\":1e-05,\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":32.0,"
        "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},\"tie_word_embeddings\":true,"
        "\"bos_token_id\":1,\"eos_token_id\":[90,91],\"hidden_act\":\"silu\",\"pretraining_tp\":1,\"use_cache\":true}", &c));
    TT_CHECK_STR(c.model_type, "llama");
    TT_CHECK_INT(c.vocab_size, 96);
    TT_CHECK_INT(c.head_dim, 16);
    TT_CHECK_INT(c.num_key_value_heads, 2);
    TT_CHECK_INT(c.tie_word_embeddings, 1);
    TT_CHECK_INT(c.eos_token_id, 90);
    TT_CHECK_INT(c.bos_token_id, 1);
    TT_CHECK_INT(c.attention_bias + c.attention_out_bias + c.mlp_bias + c.qk_norm + c.no_rope_interval + c.gpt2, 0);
    TT_CHECK(c.rope_theta == 500000.0f && c.norm_eps == 1e-5f && c.rope_scaling.factor == 32.0f && c.rope_scaling.high_freq_factor == 4.0f);
    TT_CHECK_INT(c.rope_scaling.original_max_position_embeddings, 8192);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"llama\"," SIZES ",\"attention_bias\":true,\"mlp_bias\":true,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":20000.0}}", &c));
    TT_CHECK_INT(c.attention_bias + c.attention_out_bias + c.mlp_bias, 3);
    TT_CHECK(c.rope_theta == 20000.0f && c.norm_eps == 1e-6f && c.rope_scaling.factor == 0);
    TT_CHECK_INT(c.tie_word_embeddings, 0);
    TT_CHECK_INT(c.eos_token_id, -1);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"llama\"," SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":10.5,\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":64},\"eos_token_id\":null}", &c));
    TT_CHECK(c.rope_theta == 10.5f && c.rope_scaling.factor == 8.0f);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"mistral\"," SIZES ",\"head_dim\":32,\"num_key_value_heads\":1,\"sliding_window\":null,\"eos_token_id\":0}", &c));
    TT_CHECK_INT(c.head_dim, 32);
    TT_CHECK_INT(c.eos_token_id, 0);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":4,\"sliding_window\":128}", &c));
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":2,\"sliding_window\":64,\"use_sliding_window\":false,\"max_window_layers\":28}", &c));
    TT_CHECK_INT(c.attention_bias * 10 + c.attention_out_bias, 10);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":2,\"head_dim\":24,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]}", &c));
    TT_CHECK_INT(c.qk_norm * 100 + c.head_dim, 124);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":2,\"no_rope_layers\":[1,1,1,0],\"no_rope_layer_interval\":4}", &c));
    TT_CHECK_INT(c.no_rope_interval, 4);
    TT_CHECK_INT(c.tie_word_embeddings, 1);
    TT_CHECK(c.rope_theta == 2000000.0f);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":2,\"no_rope_layers\":[1,0,1,0]}", &c));
    TT_CHECK_INT(c.no_rope_interval, 2);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":2,\"no_rope_layers\":[1,1,1,1]}", &c));
    TT_CHECK_INT(c.no_rope_interval, 0);
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":2,\"no_rope_layer_interval\":5}", &c));
    TT_CHECK_INT(c.no_rope_interval, 0);                               /* beyond the last layer */
    TT_CHECK_OK(ctx, parse(ctx, "{\"model_type\":\"gpt2\",\"vocab_size\":96,\"n_embd\":64,\"n_layer\":2,\"n_head\":4,\"n_positions\":32,\"n_inner\":null,\"layer_norm_epsilon\":1e-05,"
        "\"activation_function\":\"gelu_new\",\"bos_token_id\":95,\"eos_token_id\":95}", &c));
    TT_CHECK_INT(c.gpt2 + c.tie_word_embeddings, 2);
    TT_CHECK_INT(c.intermediate_size, 256);
    TT_CHECK_INT(c.max_position_embeddings, 32);
    TT_CHECK_INT(c.eos_token_id, 95);
    tt_destroy(ctx);
}
static void check_config_refused(const char *json, const char *part1, const char *part2) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c, before;
    memset(&c, 7, sizeof c);
    before = c;
    if (!TT_CHECK(tt_model_config_parse(ctx, json, strlen(json), &c) != TT_OK)) { printf("  accepted: %s\n", json); }
    else {
        TT_CHECK_CONTAINS(tt_error(ctx), part1);
        TT_CHECK_CONTAINS(tt_error(ctx), part2);
        TT_CHECK_BYTES(&c, &before, sizeof c);
    }
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
#define LLAMA(more) "{\"model_type\":\"llama\"," SIZES more "}"
#define LLAMA_SIZES(v, h, l, a, more) "{\"model_type\":\"llama\",\"vocab_size\":" v ",\"hidden_size\":" h ",\"num_hidden_layers\":" l ",\"num_attention_heads\":" a more "}"
#define GPT2(more) "{\"model_type\":\"gpt2\",\"vocab_size\":96,\"n_embd\":64,\"n_layer\":2,\"n_head\":4,\"n_positions\":32" more "}"
TT_TEST(config_refuses) {
    check_config_refused("", "JSON", "");
    check_config_refused("[]", "model_type", "");
    check_config_refused("{" SIZES "}", "model_type", "qwen3");
    check_config_refused("{\"model_type\":\"mamba\"," SIZES "}", "model_type", "mamba");
    check_config_refused(LLAMA_SIZES("0", "64", "2", "4", ""), "vocab_size", "0");
    check_config_refused(LLAMA_SIZES("-5", "64", "2", "4", ""), "vocab_size", "-5");
    check_config_refused(LLAMA_SIZES("1e300", "64", "2", "4", ""), "vocab_size", "1e300");
    check_config_refused(LLAMA_SIZES("2.5", "64", "2", "4", ""), "vocab_size", "2.5");
    check_config_refused(LLAMA_SIZES("\"many\"", "64", "2", "4", ""), "vocab_size", "many");
    check_config_refused(LLAMA_SIZES("true", "64", "2", "4", ""), "vocab_size", "true");
    check_config_refused(LLAMA_SIZES("96", "65", "2", "4", ""), "hidden_size", "65");
    check_config_refused(LLAMA_SIZES("96", "2147483647", "2", "1", ""), "hidden_size", "2147483647");
    check_config_refused(LLAMA_SIZES("96", "64", "2000000000", "4", ""), "num_hidden_layers", "2000000000");
    check_config_refused(LLAMA_SIZES("96", "64", "2", "0", ""), "num_attention_heads", "0");
    check_config_refused(LLAMA_SIZES("96", "64", "2", "4", ",\"num_key_value_heads\":3"), "num_key_value_heads", "3");
    check_config_refused(LLAMA_SIZES("96", "64", "2", "4", ",\"head_dim\":7"), "head_dim", "7");
    check_config_refused(LLAMA_SIZES("96", "64", "2", "4", ",\"head_dim\":100000"), "head_dim", "100000");
    check_config_refused("{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4}", "vocab_size", "");
    check_config_refused(LLAMA(",\"hidden_act\":\"gelu\""), "hidden_act", "gelu");
    check_config_refused(LLAMA(",\"hidden_act\":5"), "hidden_act", "silu");
    check_config_refused(LLAMA(",\"rms_norm_eps\":0"), "rms_norm_eps", "0");
    check_config_refused(LLAMA(",\"rms_norm_eps\":1e400"), "rms_norm_eps", "1e400");
    check_config_refused(LLAMA(",\"rope_theta\":1e300"), "rope_theta", "1e300");
    check_config_refused(LLAMA(",\"rope_theta\":1e-60"), "rope_theta", "e-60");
    check_config_refused(LLAMA(",\"rope_theta\":\"x\""), "rope_theta", "x");
    check_config_refused(LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}"), "rope_scaling", "linear");
    check_config_refused(LLAMA(",\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2}"), "rope_parameters", "yarn");
    check_config_refused(LLAMA(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}"), "rope_scaling", "low_freq_factor");
    check_config_refused(LLAMA(",\"rope_scaling\":5"), "rope_scaling", "");
    check_config_refused(LLAMA(",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\",\"rope_theta\":5}}"), "rope_parameters", "full_attention");
    check_config_refused(LLAMA(",\"partial_rotary_factor\":0.5"), "partial_rotary_factor", "0.5");
    check_config_refused(LLAMA(",\"tie_word_embeddings\":1"), "tie_word_embeddings", "");
    check_config_refused(LLAMA(",\"eos_token_id\":-2"), "eos_token_id", "-2");
    check_config_refused(LLAMA(",\"eos_token_id\":[\"x\"]"), "eos_token_id", "");
    check_config_refused(LLAMA(",\"quantization_config\":{\"bits\":4}"), "quantization_config", "");
    check_config_refused("{\"model_type\":\"mistral\"," SIZES ",\"num_key_value_heads\":4,\"sliding_window\":64}", "sliding_window", "64");
    check_config_refused("{\"model_type\":\"qwen2\"," SIZES ",\"num_key_value_heads\":4,\"use_sliding_window\":true,\"sliding_window\":64,\"max_window_layers\":1}", "sliding_window", "64");
    check_config_refused("{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":4,\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", "layer_types", "sliding_attention");
    check_config_refused("{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":4,\"no_rope_layers\":[0,1,1,0]}", "no_rope_layers", "");
    check_config_refused("{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":4,\"no_rope_layers\":[1,1]}", "no_rope_layers", "2");
    check_config_refused(GPT2(",\"activation_function\":\"relu\""), "activation_function", "relu");
    check_config_refused(GPT2(",\"scale_attn_weights\":false"), "scale_attn_weights", "false");
    check_config_refused(GPT2(",\"scale_attn_by_inverse_layer_idx\":true"), "scale_attn_by_inverse_layer_idx", "true");
    check_config_refused(GPT2(",\"n_inner\":\"x\""), "n_inner", "x");
    check_config_refused(GPT2(",\"add_cross_attention\":true"), "add_cross_attention", "true");
    check_config_refused(LLAMA(",\"eos_token_id\":[0,1,2,3,4,5,6,7,8]"), "eos_token_id", "8");
    check_config_refused(LLAMA(",\"pad_token_id\":-2"), "pad_token_id", "-2");
    check_config_refused(LLAMA(",\"pad_token_id\":2.5"), "pad_token_id", "2.5");
    check_config_refused(LLAMA(",\"intermediate_size\":2147483647"), "intermediate_size", "2147483647");
    check_config_refused(LLAMA_SIZES("96", "64", "2", "200000", ",\"head_dim\":1024,\"num_key_value_heads\":1"), "config.json", "num_attention_heads is 200000, expected at most");
    check_config_refused("{\"model_type\":\"gpt2\",\"vocab_size\":96,\"n_embd\":64,\"n_layer\":2,\"n_head\":2147483647}", "config.json", "n");
    check_config_refused("{", "config.json", "JSON line 1");
}
/* Other programs write -1, null, an empty list or a list where a token is missing or there are several. */
TT_TEST(config_token_ids_as_people_write_them) {
    static const struct { const char *fields; int bos, eos, n_more, has_pad, pad; } cases[] = {
        {",\"pad_token_id\":-1,\"bos_token_id\":1,\"eos_token_id\":2", 1, 2, 0, 0, 0},
        {",\"pad_token_id\":null,\"bos_token_id\":-1,\"eos_token_id\":-1", -1, -1, 0, 0, 0},
        {",\"pad_token_id\":0,\"bos_token_id\":null,\"eos_token_id\":null", -1, -1, 0, 1, 0},
        {",\"pad_token_id\":[4,3],\"bos_token_id\":[5],\"eos_token_id\":[2,-1,7]", 5, 2, 1, 1, 4},
        {",\"pad_token_id\":[],\"bos_token_id\":[],\"eos_token_id\":[]", -1, -1, 0, 0, 0},
        {"", -1, -1, 0, 0, 0},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tt_test_memory memory;
        tt_context *ctx = open_context(&memory);
        tt_model_config c = TT_INIT, again = TT_INIT;
        tt_text json = TT_INIT;
        char text[600];
        int family, same;
        json.ctx = ctx;
        for (family = 0; family < 2; family++) {
            snprintf(text, sizeof text, family ? GPT2("%s") : LLAMA("%s"), cases[i].fields);
            TT_CHECK_OK(ctx, tt_model_config_parse(ctx, text, strlen(text), &c));
            TT_CHECK_INT(c.bos_token_id, cases[i].bos);
            TT_CHECK_INT(c.eos_token_id, cases[i].eos);
            TT_CHECK_INT(c.n_more_eos, cases[i].n_more);
            TT_CHECK_INT(c.has_pad_token, cases[i].has_pad);
            TT_CHECK_INT(c.pad_token_id, cases[i].pad);
            json.size = 0;
            TT_CHECK_OK(ctx, tt_model_config_json(&c, &json));
            TT_CHECK_OK(ctx, tt_model_config_parse(ctx, json.data ? json.data : "", json.size, &again));
            same = memcmp(&c, &again, sizeof c) == 0;
            TT_CHECK(same);
        }
        tt_text_free(&json);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}

/* ---- models ---- */
enum { N_MODELS = 9 };
static tt_model_config config_of(int which) {
    static const char *const types[N_MODELS] = {"llama", "llama", "mistral", "qwen2", "qwen3", "smollm3", "smollm3", "gpt2", ""};
    tt_model_config c = TT_INIT;
    snprintf(c.model_type, sizeof c.model_type, "%s", types[which]);
    c.vocab_size = 29;
    c.hidden_size = 16;
    c.num_hidden_layers = 4;
    c.num_attention_heads = 4;
    c.intermediate_size = 24;
    c.max_position_embeddings = 32;
    c.num_key_value_heads = which == 7 ? 0 : 2;
    c.bos_token_id = -1;
    c.eos_token_id = which;
    c.norm_eps = 3e-6f;
    c.rope_theta = 12345.678f;
    if (which == 1) {
        c.tie_word_embeddings = c.attention_bias = c.attention_out_bias = c.mlp_bias = 1;
        c.head_dim = 6;
        c.rope_scaling.factor = 8.1f;
        c.rope_scaling.low_freq_factor = 1.0f;
        c.rope_scaling.high_freq_factor = 4.0f;
        c.rope_scaling.original_max_position_embeddings = 16;
    }
    if (which == 3) { c.attention_bias = 1; }
    if (which == 4) { c.qk_norm = 1; }
    if (which == 5) { c.no_rope_interval = 3; c.tie_word_embeddings = 1; }
    if (which == 7) { c.gpt2 = c.tie_word_embeddings = 1; }
    return c;
}
static void check_same_config(const tt_model_config *a, const tt_model_config *b) {
    TT_CHECK_STR(a->model_type, b->model_type);
#define SAME(field) TT_CHECK(a->field == b->field)
    SAME(vocab_size); SAME(hidden_size); SAME(num_hidden_layers); SAME(num_attention_heads); SAME(intermediate_size);
    SAME(num_key_value_heads); SAME(head_dim); SAME(max_position_embeddings); SAME(norm_eps); SAME(tie_word_embeddings);
    SAME(attention_bias); SAME(attention_out_bias); SAME(mlp_bias); SAME(qk_norm); SAME(no_rope_interval); SAME(gpt2);
    SAME(bos_token_id); SAME(eos_token_id); SAME(n_more_eos); SAME(has_pad_token); SAME(pad_token_id);
    if (!a->gpt2) { SAME(rope_theta); SAME(rope_scaling.factor); SAME(rope_scaling.low_freq_factor); SAME(rope_scaling.high_freq_factor); SAME(rope_scaling.original_max_position_embeddings); }
#undef SAME
}
static void check_same_weights(const tt_model *a, const tt_model *b) {
    int i;
    TT_CHECK_INT(tt_model_n_params(a), tt_model_n_params(b));
    for (i = 0; i < tt_model_n_params(a) && i < tt_model_n_params(b); i++) {
        const tt_tensor *s = tt_model_param(a, i), *t = tt_model_param(b, i);
        float *x = (float *)malloc(2 * s->size * sizeof(float));
        TT_CHECK_STR(s->name, t->name);
        TT_CHECK_INT(s->size, t->size);
        if (x && s->size == t->size) {
            tt_tensor_get(s, x);
            tt_tensor_get(t, x + s->size);
            TT_CHECK_BYTES(x, x + s->size, s->size * sizeof(float));
        }
        free(x);
    }
}
/* The random weights of a model, biases included. */
static void shake(tt_model *m) {
    int i;
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *t = tt_model_param(m, i);
        float values[2048];
        size_t k;
        TT_CHECK(t->size <= 2048);
        for (k = 0; k < t->size; k++) { values[k] = (float)tt_random(7, (uint64_t)i, k) / 1e19f; }
        tt_tensor_set(t, values);
    }
}
TT_TEST(config_round_trip) {
    int which;
    for (which = 0; which < N_MODELS; which++) {
        tt_test_memory memory;
        tt_context *ctx = open_context(&memory);
        tt_model_config c = config_of(which), again = TT_INIT;
        tt_model *m = tt_model_create(ctx, &c, 1);
        tt_text json = TT_INIT;
        json.ctx = ctx;
        TT_REQUIRE(m != NULL);
        TT_CHECK_OK(ctx, tt_model_config_json(tt_model_config_get(m), &json));
        TT_CHECK_OK(ctx, tt_model_config_parse(ctx, json.data ? json.data : "", json.size, &again));
        check_same_config(tt_model_config_get(m), &again);
        json.size = 0;
        TT_CHECK_OK(ctx, tt_model_config_json(&c, &json));             /* a config with defaults still open */
        tt_text_free(&json);
        tt_model_destroy(m);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}
/* What a family's config.json cannot say must not be lost silently. */
TT_TEST(config_json_refuses_what_a_family_lacks) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config c;
    tt_text json = TT_INIT;
    int which;
    json.ctx = ctx;
    for (which = 0; which < 9; which++) {
        c = config_of(which < 6 ? 0 : which == 6 ? 3 : 4);
        if (which == 0) { c.qk_norm = 1; }
        if (which == 1) { c.no_rope_interval = 2; }
        if (which == 2) { c.attention_bias = 1; }
        if (which == 3) { c.attention_out_bias = 1; }
        if (which == 4) { snprintf(c.model_type, sizeof c.model_type, "gpt2"); }
        if (which == 5) { snprintf(c.model_type, sizeof c.model_type, "bert"); }
        if (which == 6) { c.attention_bias = 0; }
        if (which == 7) { c.qk_norm = 0; }
        if (which == 8) { c.mlp_bias = 1; }
        if (!TT_CHECK(tt_model_config_json(&c, &json) != TT_OK)) { printf("  accepted: case %d\n", which); }
        TT_CHECK_INT(json.size, 0);
        json.size = 0;
    }
    tt_text_free(&json);
    tt_destroy(ctx);
}
TT_TEST(config_each_failing_allocation) {
    static const char json_text[] = LLAMA(",\"rope_theta\":500000.0");
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(6), parsed;
    tt_text json = TT_INIT;
    long n;
    json.ctx = ctx;
    memory.fail_at = memory.calls + 1;
    TT_CHECK_INT(tt_model_config_parse(ctx, json_text, sizeof json_text - 1, &parsed), TT_ERR_MEM);
    for (n = 1; n < 50; n++) {
        memory.fail_at = memory.calls + n;
        if (tt_model_config_json(&c, &json) == TT_OK) { break; }
        TT_CHECK_INT(json.size, 0);
        tt_text_free(&json);
    }
    TT_CHECK(n > 1 && n < 50);
    tt_text_free(&json);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(published_configs) {
    static const struct { const char *path, *type; int vocab, kv_heads, head_dim, tied, eos; } files[] = {
        {"tokenizers/llama3/config.json", "llama", 128256, 8, 128, 1, 128001},
        {"tokenizers/qwen2.5/config.json", "qwen2", 152064, 4, 128, 0, 151645},
        {"tokenizers/qwen3/config.json", "qwen3", 151936, 8, 128, 1, 151645},
    };
    tt_context *ctx;
    size_t i;
    if (!tt_test_data(files[0].path)) { TT_SKIP("no data"); }
    ctx = tt_create(NULL);
    for (i = 0; i < sizeof files / sizeof files[0]; i++) {
        const char *path = tt_test_data(files[i].path);
        tt_text json = TT_INIT;
        tt_model_config c = TT_INIT;
        json.ctx = ctx;
        TT_REQUIRE(path != NULL);
        TT_CHECK_OK(ctx, tt_file_read(ctx, path, &json));
        TT_CHECK_OK(ctx, tt_model_config_parse(ctx, json.data, json.size, &c));
        TT_CHECK_STR(c.model_type, files[i].type);
        TT_CHECK_INT(c.vocab_size, files[i].vocab);
        TT_CHECK_INT(c.num_key_value_heads, files[i].kv_heads);
        TT_CHECK_INT(c.head_dim, files[i].head_dim);
        TT_CHECK_INT(c.tie_word_embeddings, files[i].tied);
        TT_CHECK_INT(c.eos_token_id, files[i].eos);
        tt_text_free(&json);
    }
    if (tt_test_data("models/hf2q-tiny-model/model.safetensors")) {
        tt_safetensors *file = tt_safetensors_open(ctx, tt_test_data("models/hf2q-tiny-model/model.safetensors"));
        TT_REQUIRE(file != NULL);
        TT_CHECK_INT(tt_safetensors_count(file), 5);
        TT_CHECK_INT(tt_safetensors_info_get(file, 0).dtype, TT_F16);
        tt_safetensors_close(file);
        TT_CHECK(read_all(ctx, tt_test_data("models/hf2q-tiny-model/model.safetensors")));
        TT_CHECK(tt_model_load(ctx, tt_test_data("models/hf2q-tiny-model")) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "tiny_test");
    }
    tt_destroy(ctx);
}
static const char *in_dir(const char *dir, const char *name) {
    static char path[4][600];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, 600, "%s/%s", dir, name);
    return out;
}
TT_TEST(model_round_trip) {
    int which;
    for (which = 0; which < N_MODELS; which++) {
        tt_test_memory memory;
        tt_context *ctx = open_context(&memory);
        tt_model_config c = config_of(which);
        const char *dir = tt_test_tmp("model/round-trip");
        tt_model *a = tt_model_create(ctx, &c, 1), *b;
        TT_REQUIRE(a != NULL);
        shake(a);
        TT_CHECK_OK(ctx, tt_model_save(a, NULL, dir));
        b = tt_model_load(ctx, dir);
        if (!TT_CHECK(b != NULL)) { printf("  %s\n", tt_error(ctx)); }
        else {
            check_same_config(tt_model_config_get(a), tt_model_config_get(b));
            check_same_weights(a, b);
            TT_CHECK_INT(tt_model_param(b, 0)->requires_grad, 1);
        }
        TT_CHECK(tt_file_exists(in_dir(dir, "generation_config.json")));
        tt_model_destroy(a);
        tt_model_destroy(b);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}
/* Weights that do not fit leave no half of a model: without its config.json there is none. */
TT_TEST(a_full_disk_leaves_no_half_of_a_model) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    tt_lora_desc lora = TT_INIT;
    const char *dir = tt_test_tmp("model/full-disk");
    tt_model *m = tt_model_create(ctx, &c, 1);
    tt_status status = TT_OK;
    int adapters;
    TT_REQUIRE(m != NULL);
    lora.rank = 4;
    for (adapters = 0; adapters < 2; adapters++) {
        const char *config = in_dir(dir, adapters ? "adapter_config.json" : "config.json");
        if (adapters) { TT_CHECK_OK(ctx, tt_model_lora_add(m, &lora)); }
        TT_CHECK_OK(ctx, tt_make_dirs(ctx, dir));
        remove(config);
        if (!tt_test_disk(1500)) { printf("  left out: no limit on the size of files\n"); break; }
        status = adapters ? tt_model_lora_save(m, dir) : tt_model_save(m, NULL, dir);
        tt_test_disk(-1);
        TT_CHECK_INT(status, TT_ERR_IO);
        TT_CHECK_CONTAINS(tt_error(ctx), "model.safetensors");
        TT_CHECK(!tt_file_exists(config));
        TT_CHECK(adapters || tt_model_load(ctx, dir) == NULL);
        TT_CHECK_OK(ctx, adapters ? tt_model_lora_save(m, dir) : tt_model_save(m, NULL, dir));
        TT_CHECK(tt_file_exists(config));
    }
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(a_folder_without_a_name_is_refused) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    tt_model *m = tt_model_create(ctx, &c, 1);
    TT_REQUIRE(m != NULL);
    TT_CHECK(tt_model_load(ctx, "") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "cannot open config.json: the name of its folder is empty");
    TT_CHECK(tt_model_map(ctx, "") == NULL);
    TT_CHECK_INT(tt_model_lora_load(m, ""), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "adapter_config.json");
    TT_CHECK(tt_model_save(m, NULL, "") != TT_OK);
    TT_CHECK_CONTAINS(tt_error(ctx), "is empty");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(model_with_tokenizer) {
    static const char json[] = "{\"added_tokens\":[{\"id\":3,\"content\":\"<end>\",\"special\":true}],\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]},"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}}";
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/with-tokenizer");
    tt_tokenizer *t = tt_tokenizer_parse(ctx, json, sizeof json - 1), *again;
    tt_text text = TT_INIT;
    tt_json *root;
    tt_model *m;
    text.ctx = ctx;
    c.eos_token_id = 3;
    m = tt_model_create(ctx, &c, 1);
    if (!t) { printf("  %s\n", tt_error(ctx)); }
    TT_REQUIRE(m != NULL && t != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, t, dir));
    again = tt_tokenizer_load(ctx, in_dir(dir, "tokenizer.json"));
    TT_CHECK(again != NULL && tt_vocab_size(again) == 4);
    TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir, "tokenizer_config.json"), &text));
    root = tt_json_parse(ctx, text.data, text.size);
    TT_CHECK_STR(tt_json_text(root, "tokenizer_class", ""), "PreTrainedTokenizerFast");
    TT_CHECK_STR(tt_json_text(root, "eos_token", ""), "<end>");
    TT_CHECK(tt_json_get(root, "bos_token") == NULL || tt_json_get(root, "bos_token")->type == TT_JSON_NULL);
    tt_json_free(ctx, root);
    tt_text_free(&text);
    tt_tokenizer_destroy(again);
    tt_tokenizer_destroy(t);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* Files with chosen tensors: those of a model whose index is from .. to-1, renamed, plus extra ones. */
static void save_part(tt_model *m, const char *path, int from, int to, int cut_prefix, const char *extra, int rows) {
    tt_context *ctx = tt_model_context(m);
    tt_named list[80];
    int n = 0, i, shape[2];
    tt_tensor *more = NULL;
    for (i = from; i < to; i++) {
        list[n].name = tt_model_param(m, i)->name + (cut_prefix ? 12 : 0);
        list[n++].tensor = tt_model_param(m, i);
    }
    if (extra) {
        shape[0] = rows;
        shape[1] = 16;
        more = tt_tensor_create(ctx, TT_F32, 2, shape, extra);
        list[n].name = extra;
        list[n++].tensor = more;
    }
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, list, n, ""));
    tt_tensor_destroy(more);
}
static void check_load(tt_model *m, const char *dir, int good, const char *part1, const char *part2) {
    tt_model *b;
    tt_error_clear(tt_model_context(m));
    b = tt_model_load(tt_model_context(m), dir);
    if (!TT_CHECK((b != NULL) == good)) { printf("  expected %s %s, got: %s\n", part1, part2, tt_error(tt_model_context(m))); }
    if (b) { check_same_weights(m, b); }
    if (!good) {
        TT_CHECK_CONTAINS(tt_error(tt_model_context(m)), part1);
        TT_CHECK_CONTAINS(tt_error(tt_model_context(m)), part2);
    }
    tt_model_destroy(b);
}
TT_TEST(model_files_that_do_not_fit) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0), wide = c;
    const char *dir = tt_test_tmp("model/misfit"), *file;
    tt_model *m = tt_model_create(ctx, &c, 1), *other;
    int n, i;
    TT_REQUIRE(m != NULL);
    n = tt_model_n_params(m);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    file = in_dir(dir, "model.safetensors");
    save_part(m, file, 0, n, 0, "model.layers.0.self_attn.rotary_emb.inv_freq", 1);
    check_load(m, dir, 1, "", "");
    save_part(m, file, 0, n, 0, "model.layers.0.mlp.extra.weight", 1);
    check_load(m, dir, 0, "model.layers.0.mlp.extra.weight", "");
    for (i = 0; i < n; i++) {                                          /* each one missing, by a rename */
        char was = tt_model_param(m, i)->name[0];
        tt_model_param(m, i)->name[0] = 'X';
        save_part(m, file, 0, n, 0, NULL, 0);
        tt_model_param(m, i)->name[0] = was;
        check_load(m, dir, 0, "", tt_model_param(m, i)->name + 1);
    }
    save_part(m, file, 0, n - 1, 0, NULL, 0);
    check_load(m, dir, 0, "lm_head.weight", "missing");
    wide.intermediate_size = 28;
    other = tt_model_create(ctx, &wide, 1);
    TT_REQUIRE(other != NULL);
    save_part(other, file, 0, n, 0, NULL, 0);
    check_load(m, dir, 0, "model.layers.0.mlp.gate_proj.weight is [28,16]", "config wants [24,16]");
    tt_model_destroy(other);
    write_bytes(file, "garbage", 7);
    check_load(m, dir, 0, "model.safetensors", "");
    remove(file);
    check_load(m, dir, 0, "model.safetensors", "");
    remove(in_dir(dir, "config.json"));
    check_load(m, dir, 0, "config.json", "");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* The weights of a model, whose embedding stands under one name, the other, or both: equal, or not. */
typedef enum pair { EMBEDDING, HEAD, BOTH, BOTH_DIFFERENT } pair;
static void save_pair(tt_model *m, const char *path, pair which, int cut_prefix) {
    tt_context *ctx = tt_model_context(m);
    tt_named list[80];
    tt_tensor *other = tt_tensor_create(ctx, TT_F32, 2, tt_model_param(m, 0)->shape, "other");
    int n = 0, i;
    for (i = 0; i < tt_model_n_params(m); i++) {
        list[n].name = i == 0 && which == HEAD ? "lm_head.weight" : tt_model_param(m, i)->name + (cut_prefix ? 12 : 0);
        list[n++].tensor = tt_model_param(m, i);
    }
    list[n].name = "lm_head.weight";
    list[n].tensor = which == BOTH ? tt_model_param(m, 0) : other;
    if (which >= BOTH) { n++; }
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, list, n, ""));
    tt_tensor_destroy(other);
}
TT_TEST(weights_of_a_tied_pair_under_either_name) {
    static const int models[3] = {1, 5, 7};                            /* llama, smollm3, gpt2 */
    int k, which, map;
    for (k = 0; k < 3 * 2 * 4; k++) {
        tt_test_memory memory;
        tt_context *ctx = open_context(&memory);
        tt_model_config c = config_of(models[k % 3]);
        const char *dir = tt_test_tmp("model/tied");
        tt_model *m = tt_model_create(ctx, &c, 1), *b, *again;
        TT_REQUIRE(m != NULL);
        which = k / 6;
        map = k / 3 % 2;
        shake(m);
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
        save_pair(m, in_dir(dir, "model.safetensors"), (pair)which, models[k % 3] == 7 && map);
        b = map ? tt_model_map(ctx, dir) : tt_model_load(ctx, dir);
        if (!b) { printf("  %s\n", tt_error(ctx)); }
        TT_REQUIRE(b != NULL);
        TT_CHECK_INT(tt_model_config_get(b)->tie_word_embeddings, which != BOTH_DIFFERENT);
        TT_CHECK(tt_test_same(tt_model_param(b, 0), tt_model_param(m, 0)));
        TT_CHECK((tt_model_param_find(b, "lm_head.weight") == NULL) == (which != BOTH_DIFFERENT));
        if (which != BOTH_DIFFERENT) { check_same_weights(m, b); }
        TT_CHECK_OK(ctx, tt_model_save(b, NULL, tt_test_tmp("model/tied-again")));      /* and comes back as it is */
        again = tt_model_load(ctx, tt_test_tmp("model/tied-again"));
        TT_REQUIRE(again != NULL);
        check_same_config(tt_model_config_get(b), tt_model_config_get(again));
        check_same_weights(b, again);
        tt_model_destroy(again);
        tt_model_destroy(b);
        tt_model_destroy(m);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}
TT_TEST(a_pair_that_is_not_tied_needs_both) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(1);
    const char *dir = tt_test_tmp("model/untied");
    tt_model *m;
    c.tie_word_embeddings = 0;
    m = tt_model_create(ctx, &c, 1);
    TT_REQUIRE(m != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    save_part(m, in_dir(dir, "model.safetensors"), 0, tt_model_n_params(m) - 1, 0, NULL, 0);
    check_load(m, dir, 0, "lm_head.weight is missing", "tie_word_embeddings is false");
    save_part(m, in_dir(dir, "model.safetensors"), 1, tt_model_n_params(m), 0, NULL, 0);
    check_load(m, dir, 0, "model.embed_tokens.weight is missing", "");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(model_gpt2_prefix_and_buffers) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(7);
    const char *dir = tt_test_tmp("model/gpt2");
    tt_model *m = tt_model_create(ctx, &c, 1);
    int n;
    TT_REQUIRE(m != NULL);
    n = tt_model_n_params(m);
    shake(m);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    save_part(m, in_dir(dir, "model.safetensors"), 0, n, 1, "h.0.attn.bias", 3);
    check_load(m, dir, 1, "", "");
    save_part(m, in_dir(dir, "model.safetensors"), 0, n, 0, "transformer.h.1.attn.masked_bias", 1);
    check_load(m, dir, 1, "", "");
    save_part(m, in_dir(dir, "model.safetensors"), 0, n, 0, "h.0.attn.c_attn.bias", 1);        /* both names */
    check_load(m, dir, 0, "h.0.attn.c_attn.bias", "");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
static void save_index(tt_context *ctx, const char *dir, const char *map) {
    char text[1000];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":1},\"weight_map\":%s}", map);
    TT_CHECK_OK(ctx, tt_file_write(ctx, in_dir(dir, "model.safetensors.index.json"), text, strlen(text)));
}
TT_TEST(model_shards) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(4), c2 = c;
    char dir[256];
    tt_model *m = tt_model_create(ctx, &c, 1), *newer;
    int n;
    TT_REQUIRE(m != NULL);
    snprintf(dir, sizeof dir, "%s", tt_test_tmp("model/shards"));
    n = tt_model_n_params(m);
    shake(m);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    remove(in_dir(dir, "model.safetensors"));
    save_part(m, in_dir(dir, "model-00001-of-00002.safetensors"), 0, n / 2, 0, NULL, 0);
    save_part(m, in_dir(dir, "model-00002-of-00002.safetensors"), n / 2, n, 0, NULL, 0);
    save_index(ctx, dir, "{\"model.embed_tokens.weight\":\"model-00001-of-00002.safetensors\",\"model.norm.weight\":\"model-00002-of-00002.safetensors\",\"lm_head.weight\":\"model-00002-of-00002.safetensors\"}");
    check_load(m, dir, 1, "", "");
    save_index(ctx, dir, "{\"model.embed_tokens.weight\":\"model-00001-of-00002.safetensors\"}");
    check_load(m, dir, 0, "missing", "");
    save_index(ctx, dir, "{\"a\":\"../shards/model-00001-of-00002.safetensors\"}");
    check_load(m, dir, 0, "../shards/model-00001", "");
    save_index(ctx, dir, "{\"a\":\"nowhere.safetensors\"}");
    check_load(m, dir, 0, "nowhere.safetensors", "");
    save_index(ctx, dir, "{\"a\":5}");
    check_load(m, dir, 0, "weight_map", "");
    save_index(ctx, dir, "{}");
    check_load(m, dir, 0, "weight_map", "");
    save_index(ctx, dir, "[1]");
    check_load(m, dir, 0, "weight_map", "");
    save_part(m, in_dir(dir, "again.safetensors"), 0, 1, 0, NULL, 0);
    save_index(ctx, dir, "{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00002-of-00002.safetensors\",\"c\":\"again.safetensors\"}");
    check_load(m, dir, 0, "model.embed_tokens.weight", "");            /* in two shards */
    save_index(ctx, dir, "{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00002-of-00002.safetensors\"}");
    newer = tt_model_create(ctx, &c2, 99);                             /* saving over old shards: the new weights count */
    TT_REQUIRE(newer != NULL);
    TT_CHECK_OK(ctx, tt_model_save(newer, NULL, dir));
    check_load(newer, dir, 1, "", "");
    tt_model_destroy(newer);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* A config far beyond its files is refused before memory is asked for: all shapes are compared first. */
TT_TEST(model_huge_config) {
    static const char *const configs[] = {
        "{\"model_type\":\"llama\",\"vocab_size\":2000000000,\"hidden_size\":16384,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"intermediate_size\":24}",
        "{\"model_type\":\"llama\",\"vocab_size\":29,\"hidden_size\":16,\"num_hidden_layers\":1024,\"num_attention_heads\":4,\"intermediate_size\":2000000000}",
        "{\"model_type\":\"llama\",\"vocab_size\":29,\"hidden_size\":16,\"num_hidden_layers\":1024,\"num_attention_heads\":65536,\"head_dim\":1024,\"intermediate_size\":24}",
        "{\"model_type\":\"llama\",\"vocab_size\":29,\"hidden_size\":16,\"num_hidden_layers\":4,\"num_attention_heads\":65536,\"num_key_value_heads\":65536,\"head_dim\":1024,\"intermediate_size\":24}",
        "{\"model_type\":\"llama\",\"vocab_size\":29,\"hidden_size\":16,\"num_hidden_layers\":4,\"num_attention_heads\":65536,\"num_key_value_heads\":65536,\"head_dim\":512,\"intermediate_size\":24}",
        "{\"model_type\":\"llama\",\"vocab_size\":29,\"hidden_size\":16,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":100000000}",
        "{\"model_type\":\"gpt2\",\"vocab_size\":29,\"n_embd\":16,\"n_layer\":4,\"n_head\":4,\"n_positions\":2147483647}",
    };
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/huge");
    tt_model *m = tt_model_create(ctx, &c, 1);
    size_t i;
    TT_REQUIRE(m != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    for (i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        TT_CHECK_OK(ctx, tt_file_write(ctx, in_dir(dir, "config.json"), configs[i], strlen(configs[i])));
        check_load(m, dir, 0, "model/huge", "");
        TT_CHECK(tt_model_map(ctx, dir) == NULL);
        TT_CHECK(tt_memory_get(ctx).peak_bytes < ((size_t)1 << 22));
    }
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(model_each_failing_allocation) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(5);
    const char *dir = tt_test_tmp("model/allocations");
    tt_model *m;
    long n, blocks;
    c.num_hidden_layers = 1;
    m = tt_model_create(ctx, &c, 1);
    TT_REQUIRE(m != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    blocks = memory.live_blocks;
    for (n = 1; n < 400; n++) {
        tt_model *b;
        memory.fail_at = memory.calls + n;
        b = tt_model_load(ctx, dir);
        memory.fail_at = 0;
        tt_model_destroy(b);
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (b) { break; }
        TT_CHECK_INT(tt_error_status(ctx), TT_ERR_MEM);
    }
    TT_CHECK(n > 20 && n < 400);
    for (n = 1; n < 200; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_save(m, NULL, dir);
        memory.fail_at = 0;
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
        check_load(m, dir, 1, "", "");
    }
    TT_CHECK(n > 5 && n < 200);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- generation_config.json ---- */
static void put_text(const char *dir, const char *name, const char *text) { write_bytes(in_dir(dir, name), text, strlen(text)); }
TT_TEST(generation_config_is_read_and_kept) {
    static const char text[] = "{\n  \"do_sample\": true, \"temperature\": 0.6, \"top_k\": 40, \"top_p\": 0.9, \"min_p\": 0.05,\n  \"repetition_penalty\": 1.1, \"eos_token_id\": [7, 3, 9], \"_note\": \"kept\"\n}\n";
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/generation"), *dir2 = tt_test_tmp("model/generation-odd");
    tt_model *m, *odd;
    tt_sampling s;
    tt_text kept = TT_INIT;
    kept.ctx = ctx;
    c.eos_token_id = 5;
    c.n_more_eos = 2;
    c.more_eos[0] = 11;
    c.more_eos[1] = 0;
    c.has_pad_token = 1;
    c.pad_token_id = 28;
    m = tt_model_create(ctx, &c, 1);
    TT_REQUIRE(m != NULL);
    s = tt_model_sampling(m);
    TT_CHECK(s.greedy == 1 && s.n_stop_tokens == 3 && s.stop_tokens[0] == 5 && s.stop_tokens[1] == 11 && s.stop_tokens[2] == 0);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir2));
    tt_model_destroy(m);
    m = tt_model_load(ctx, dir);                                   /* what we write without one */
    TT_REQUIRE(m != NULL);
    s = tt_model_sampling(m);
    TT_CHECK(s.greedy == 1 && s.n_stop_tokens == 3 && s.stop_tokens[2] == 0);
    TT_CHECK(tt_model_config_get(m)->n_more_eos == 2 && tt_model_config_get(m)->more_eos[0] == 11);
    TT_CHECK(tt_model_config_get(m)->has_pad_token == 1 && tt_model_config_get(m)->pad_token_id == 28);
    tt_model_destroy(m);
    put_text(dir, "generation_config.json", text);
    m = tt_model_load(ctx, dir);
    TT_REQUIRE(m != NULL);
    s = tt_model_sampling(m);
    TT_CHECK(s.greedy == 0 && s.temperature == 0.6f && s.top_k == 40 && s.top_p == 0.9f && s.min_p == 0.05f && s.repetition_penalty == 1.1f);
    TT_CHECK(s.n_stop_tokens == 3 && s.stop_tokens[0] == 7 && s.stop_tokens[1] == 3 && s.stop_tokens[2] == 9);
    put_text(dir2, "generation_config.json", "{\"do_sample\":true,\"top_p\":0,\"top_k\":null,\"eos_token_id\":-1,\"pad_token_id\":-1}");
    odd = tt_model_load(ctx, dir2);                                /* as people write them: 0 is the limit towards 0 */
    TT_REQUIRE(odd != NULL);
    s = tt_model_sampling(odd);
    TT_CHECK(s.greedy == 0 && s.top_p > 0 && s.top_p < 1e-30f && s.n_stop_tokens == 3 && s.stop_tokens[0] == 5);
    tt_model_destroy(odd);
    put_text(dir2, "generation_config.json", "{\"do_sample\":true,\"temperature\":0}");
    odd = tt_model_load(ctx, dir2);
    TT_REQUIRE(odd != NULL);
    TT_CHECK_INT(tt_model_sampling(odd).greedy, 1);
    tt_model_destroy(odd);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, tt_test_tmp("model/generation2")));
    TT_CHECK_OK(ctx, tt_file_read(ctx, "build/tmp/model/generation2/generation_config.json", &kept));
    TT_CHECK_STR(kept.data, text);
    tt_text_free(&kept);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* ---- chat template ---- */
#define CHATML "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}" \
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
static void check_chat(tt_context *ctx, const char *dir, const char *format) {
    tt_model *m = tt_model_load(ctx, dir);
    if (!TT_CHECK(m != NULL)) { printf("  %s\n", tt_error(ctx)); }
    if (m) { TT_CHECK_STR(tt_model_chat_format(m), format); }
    tt_model_destroy(m);
}
TT_TEST(chat_template_is_read_and_kept) {
    static const char json[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}}";
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/chat"), *dir2 = tt_test_tmp("model/chat2");
    tt_tokenizer *t = tt_tokenizer_parse(ctx, json, sizeof json - 1);
    tt_model *m = tt_model_create(ctx, &c, 1), *copy;
    tt_text text = TT_INIT;
    long n, blocks;
    text.ctx = ctx;
    TT_REQUIRE(m != NULL && t != NULL);
    TT_CHECK_STR(tt_model_chat_format(m), "");
    remove(in_dir(dir, "tokenizer_config.json"));
    remove(in_dir(dir, "chat_template.jinja"));
    remove(in_dir(dir2, "chat_template.jinja"));
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    tt_model_destroy(m);
    check_chat(ctx, dir, "");
    put_text(dir, "tokenizer_config.json", "{\"chat_template\": null}");
    check_chat(ctx, dir, "");
    put_text(dir, "tokenizer_config.json", "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}, {\"name\": \"default\", \"template\": \"" CHATML "\"}]}");
    check_chat(ctx, dir, "chatml");
    put_text(dir, "tokenizer_config.json", "{\"chat_template\": \"{{ messages }}\"}");
    check_chat(ctx, dir, NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "chat template {{messages}}... is not known here");
    put_text(dir, "chat_template.jinja", CHATML);                   /* goes before the other file */
    m = tt_model_load(ctx, dir);
    TT_REQUIRE(m != NULL);
    TT_CHECK_STR(tt_model_chat_format(m), "chatml");
    copy = tt_model_copy(m);
    TT_CHECK_STR(tt_model_chat_format(copy), "chatml");
    tt_model_destroy(copy);
    TT_CHECK_OK(ctx, tt_model_save(m, t, dir2));
    tt_model_destroy(m);
    check_chat(ctx, dir2, "chatml");
    TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir2, "tokenizer_config.json"), &text));
    TT_CHECK_CONTAINS(text.data, "\"chat_template\": \"{% for message in messages %}");
    tt_text_free(&text);
    blocks = memory.live_blocks;
    for (n = 1; n < 400; n++) {
        memory.fail_at = memory.calls + n;
        m = tt_model_load(ctx, dir2);
        copy = m ? tt_model_copy(m) : NULL;
        memory.fail_at = 0;
        tt_model_destroy(copy);
        tt_model_destroy(m);
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (copy) { break; }
    }
    TT_CHECK(n > 20 && n < 400);
    put_text(dir2, "tokenizer_config.json", "{\"chat_template\": ");
    TT_CHECK(tt_model_load(ctx, dir2) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "tokenizer_config.json: ");
    put_text(dir2, "tokenizer_config.json", "{\"chat_template\": \"a\\u0000b\"}");
    TT_CHECK(tt_model_load(ctx, dir2) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "the chat template holds a byte 0");
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(generation_config_refuses) {
    static const struct { const char *json, *part1, *part2; } bad[] = {
        {"{", "generation_config.json", "JSON"},
        {"{\"temperature\":-1}", "temperature", "-1"},
        {"{\"temperature\":\"hot\"}", "temperature", "hot"},
        {"{\"top_p\":1.5}", "top_p", "1.5"},
        {"{\"min_p\":-0.1}", "min_p", "-0.1"},
        {"{\"top_k\":2.5}", "top_k", "2.5"},
        {"{\"repetition_penalty\":0}", "repetition_penalty", "0"},
        {"{\"do_sample\":1}", "do_sample", "1"},
        {"{\"eos_token_id\":[1,-2]}", "model/generation3/generation_config.json: eos_token_id", "-2"},
        {"{\"eos_token_id\":{}}", "eos_token_id", "object"},
        {"{\"eos_token_id\":[0,1,2,3,4,5,6,7,8]}", "eos_token_id", "8"},
    };
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/generation3");
    tt_model *m = tt_model_create(ctx, &c, 1);
    size_t i;
    TT_REQUIRE(m != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_text(dir, "generation_config.json", bad[i].json);
        check_load(m, dir, 0, bad[i].part1, bad[i].part2);
        TT_CHECK_CONTAINS(tt_error(ctx), "generation_config.json");
    }
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- errors and values that must not pass ---- */
TT_TEST(errors_of_a_model_name_their_file) {
    static const struct { const char *file, *text, *reason; } bad[] = {
        {"config.json", "{", "JSON line 1"},
        {"config.json", "[]", "model_type"},
        {"config.json", LLAMA_SIZES("29", "-1", "2", "4", ""), "hidden_size is -1"},
        {"config.json", LLAMA_SIZES("29", "17", "2", "4", ""), "hidden_size is 17"},
        {"config.json", LLAMA_SIZES("29", "16", "2", "4", ",\"rope_scaling\":{\"type\":\"linear\"}"), "rope_scaling has type \"linear\""},
        {"config.json", "{\"model_type\":\"mistral\"," SIZES ",\"attention_bias\":true}", "num_key_value_heads"},
        {"config.json", "{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":4,\"mlp_bias\":true}", "mlp_bias"},
        {"config.json", "{\"model_type\":\"qwen3\"," SIZES ",\"num_key_value_heads\":4,\"layer_types\":[5]}", "layer_types"},
        {"config.json", "{\"model_type\":\"smollm3\"," SIZES ",\"num_key_value_heads\":4,\"no_rope_layers\":[1]}", "no_rope_layers"},
        {"generation_config.json", "{\"top_p\":", "JSON line 1"},
        {"generation_config.json", "{\"top_p\":7}", "top_p is 7"},
        {"tokenizer_config.json", "{", "JSON line 1"},
        {"model.safetensors.index.json", "{\"weight_map\":", "JSON line 1"},
        {"model.safetensors.index.json", "{}", "weight_map"},
        {"model.safetensors.index.json", "{\"weight_map\":{\"a\":\"../b\"}}", "../b"},
    };
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/named");
    char place[200];
    tt_model *m = tt_model_create(ctx, &c, 1);
    size_t i;
    TT_REQUIRE(m != NULL);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        remove(in_dir(dir, "tokenizer_config.json"));
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
        put_text(dir, bad[i].file, bad[i].text);
        if (strcmp(bad[i].file, "model.safetensors.index.json") == 0) { remove(in_dir(dir, "model.safetensors")); }
        snprintf(place, sizeof place, "model/named/%s: ", bad[i].file);
        check_load(m, dir, 0, place, bad[i].reason);
    }
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
static void put_value(tt_tensor *t, size_t at, float value) {
    float values[2048];
    TT_CHECK(t->size <= 2048 && tt_tensor_get(t, values) == TT_OK);
    values[at] = value;
    tt_tensor_set(t, values);
}
/* A model that has lost its numbers is refused before the first byte of any file, in one file, in shards, and as adapters. */
TT_TEST(what_is_not_finite_replaces_no_good_file) {
    static const float bad[3] = {NAN, INFINITY, -INFINITY};
    static const char *const kept[] = {"config.json", "generation_config.json", "model.safetensors.index.json"};
    int which;
    for (which = 0; which < 3; which++) {
        tt_test_memory memory;
        tt_context *ctx = open_context(&memory);
        tt_model_config c = config_of(0);
        const char *dir = tt_test_tmp("model/finite"), *single = tt_test_tmp("model/finite-single"), *adapter = tt_test_tmp("model/finite-adapter");
        tt_model *m = tt_model_create(ctx, &c, 1), *good;
        tt_save_desc shards = TT_INIT, half = TT_INIT;
        tt_text before[3], after = TT_INIT;
        tt_tensor *last;
        int i;
        TT_REQUIRE(m != NULL);
        memset(before, 0, sizeof before);
        after.ctx = ctx;
        shake(m);
        good = tt_model_copy(m);
        last = tt_model_param(m, tt_model_n_params(m) - 1);
        shards.max_shard_bytes = 4000;
        TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, dir, &shards));
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, single));
        for (i = 0; i < 3; i++) { before[i].ctx = ctx; TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir, kept[i]), &before[i])); }
        put_value(last, 5, bad[which]);
        put_value(tt_model_param(m, 1), 0, 77);                        /* a change that the old files do not have */
        TT_CHECK_INT(tt_model_save_as(m, NULL, dir, &shards), TT_ERR_NUMBER);
        TT_CHECK_CONTAINS(tt_error(ctx), "model/finite: not written, for value 5 of lm_head.weight");
        TT_CHECK_INT(tt_model_save(m, NULL, single), TT_ERR_NUMBER);
        check_load(good, dir, 1, "", "");
        check_load(good, single, 1, "", "");
        for (i = 0; i < 3; i++) {
            after.size = 0;
            TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir, kept[i]), &after));
            TT_CHECK_STR(after.data, before[i].data);
            tt_text_free(&before[i]);
        }
        put_value(last, 5, 65519.0f);                                  /* the largest that float16 rounds to a number */
        half.dtype = TT_F16;
        TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, single, &half));
        put_value(last, 5, 65520.0f);
        TT_CHECK_INT(tt_model_save_as(m, NULL, single, &half), TT_ERR_NUMBER);
        TT_CHECK_CONTAINS(tt_error(ctx), "not finite as F16");
        half.dtype = TT_BF16;
        TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, single, &half));
        put_value(last, 5, 3.4e38f);
        TT_CHECK_INT(tt_model_save_as(m, NULL, single, &half), TT_ERR_NUMBER);
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, single));
        TT_CHECK_OK(ctx, tt_model_lora_add(m, NULL));
        TT_CHECK_OK(ctx, tt_model_lora_save(m, adapter));
        put_value(tt_model_param(m, tt_model_n_params(m) - 1), 3, bad[which]);
        TT_CHECK_INT(tt_model_lora_save(m, adapter), TT_ERR_NUMBER);
        TT_CHECK_CONTAINS(tt_error(ctx), "down_proj.lora_B.weight");
        TT_CHECK_OK(ctx, tt_model_lora_load(good, adapter));
        tt_text_free(&after);
        tt_model_destroy(good);
        tt_model_destroy(m);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}
TT_TEST(state_that_is_not_finite_replaces_no_good_file) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    const char *path = tt_test_tmp("state.safetensors");
    state a, b;
    TT_REQUIRE(state_create(&a, ctx, 1) && state_create(&b, ctx, 2));
    TT_CHECK_OK(ctx, tt_state_save(ctx, path, a.named, 3, "{}"));
    put_value(b.tensors[1], 14, NAN);
    TT_CHECK_INT(tt_state_save(ctx, path, b.named, 3, "{}"), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(ctx), "state.safetensors: not written, for value 14 of model.w is not finite");
    TT_CHECK_OK(ctx, tt_state_load(ctx, path, b.named, 3, NULL));
    TT_CHECK(state_is(&b, 1));
    state_destroy(&a);
    state_destroy(&b);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- shards, half precision, mapped files ---- */
TT_TEST(save_in_shards) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(4);
    char dir[256];
    tt_model *m = tt_model_create(ctx, &c, 1);
    tt_save_desc d = TT_INIT;
    tt_text index = TT_INIT;
    tt_json *root;
    const tt_json *entry;
    long n, blocks;
    int i, files = 0;
    index.ctx = ctx;
    snprintf(dir, sizeof dir, "%s", tt_test_tmp("model/saved-shards"));
    TT_REQUIRE(m != NULL);
    shake(m);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    d.max_shard_bytes = 1u << 30;
    TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, dir, &d));                  /* all fits: one file */
    TT_CHECK(tt_file_exists(in_dir(dir, "model.safetensors")));
    d.max_shard_bytes = 4000;
    TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, dir, &d));
    TT_CHECK(!tt_file_exists(in_dir(dir, "model.safetensors")));              /* it would count */
    check_load(m, dir, 1, "", "");
    TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir, "model.safetensors.index.json"), &index));
    root = tt_json_parse(ctx, index.data, index.size);
    TT_REQUIRE(root != NULL);
    TT_CHECK_NEAR(tt_json_number(tt_json_get(root, "metadata"), "total_size", 0), (double)(tt_model_size(m) * 4), 0);
    TT_CHECK_INT(tt_json_get(root, "weight_map")->length, tt_model_n_params(m));
    for (i = 0, entry = tt_json_get(root, "weight_map")->child; entry; entry = entry->next, i++) {
        tt_safetensors *file = tt_safetensors_open(ctx, in_dir(dir, entry->string));
        size_t bytes = 0;
        int k;
        TT_CHECK_STR(entry->key, tt_model_param(m, i)->name);
        TT_REQUIRE(file != NULL);
        for (k = 0; k < tt_safetensors_count(file); k++) bytes += 4 * tt_safetensors_info_get(file, k).size;
        TT_CHECK(bytes <= 4000);
        TT_CHECK(tt_safetensors_find(file, entry->key) >= 0);
        files += tt_safetensors_find(file, entry->key) == 0;
        tt_safetensors_close(file);
    }
    TT_CHECK(files > 2 && files < tt_model_n_params(m));
    tt_json_free(ctx, root);
    tt_text_free(&index);
    blocks = memory.live_blocks;
    for (n = 1; n < 400; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_save_as(m, NULL, dir, &d);
        memory.fail_at = 0;
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
    }
    TT_CHECK(n > 20 && n < 400);
    d.dtype = TT_I32;
    TT_CHECK_INT(tt_model_save_as(m, NULL, dir, &d), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "dtype");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
static float rounded(float x, tt_dtype dtype) { return dtype == TT_BF16 ? tti_from_bf16(tti_to_bf16(x)) : tti_from_f16(tti_to_f16(x)); }
/* Log-probs and entropies of three tokens. */
static void logprobs_of(tt_model *m, float *out) {
    static const int32_t tokens[] = {1, 3, 2, 5}, offsets[] = {0, 4};
    tt_context *ctx = m->ctx;
    tt_batch_desc batch = TT_INIT;
    tt_tensor *logprobs, *entropy;
    batch.n_sequences = 1;
    batch.offsets = offsets;
    batch.tokens = tokens;
    logprobs = tt_model_logprobs(m, tt_batch_create(ctx, &batch), 1, &entropy);
    TT_CHECK(logprobs && tt_tensor_get(logprobs, out) == TT_OK && tt_tensor_get(entropy, out + 3) == TT_OK);
    tt_step_reset(ctx);
}
TT_TEST(save_as_half_and_map) {
    static const tt_dtype types[2] = {TT_BF16, TT_F16};
    int which, k;
    for (which = 0; which < N_MODELS; which++) {
        for (k = 0; k < 2; k++) {
            tt_test_memory memory;
            tt_context *ctx = open_context(&memory);
            tt_model_config c = config_of(which);
            const char *dir = tt_test_tmp("model/half");
            tt_model *m = tt_model_create(ctx, &c, 1), *half, *mapped;
            tt_save_desc d = TT_INIT;
            float a[2048], b[2048];
            size_t j;
            int i, lent = 0;
            TT_REQUIRE(m != NULL);
            shake(m);
            d.dtype = types[k];
            TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, dir, &d));
            half = tt_model_load(ctx, dir);
            mapped = tt_model_map(ctx, dir);
            TT_REQUIRE(half != NULL && mapped != NULL);
            for (i = 0; i < tt_model_n_params(m); i++) {
                tt_tensor_get(tt_model_param(m, i), a);
                for (j = 0; j < tt_model_param(m, i)->size; j++) { a[j] = rounded(a[j], types[k]); }
                tt_tensor_get(tt_model_param(half, i), b);
                TT_CHECK_BYTES(a, b, tt_model_param(m, i)->size * sizeof(float));
                tt_tensor_get(tt_model_param(mapped, i), b);
                TT_CHECK_BYTES(a, b, tt_model_param(m, i)->size * sizeof(float));
                lent += tt_model_param(mapped, i)->lent;
            }
            /* the layers' matrices; of bf16 also the embedding and a head of its own; a device has copies */
            TT_CHECK_INT(lent, TT_TEST_DEVICE ? 0 : c.num_hidden_layers * (which == 7 ? 4 : 7) + (k == 0 ? c.tie_word_embeddings ? 1 : 2 : 0));
            logprobs_of(half, a);
            logprobs_of(mapped, b);
            TT_CHECK_BYTES(a, b, 6 * sizeof(float));
            TT_CHECK((tt_model_assign(mapped, half) == TT_OK) == TT_TEST_DEVICE);
            TT_CHECK_CONTAINS(tt_error(ctx), TT_TEST_DEVICE ? "" : "mapped");
            TT_CHECK_OK(ctx, tt_model_assign(half, mapped));
            TT_CHECK_OK(ctx, tt_model_lora_add(mapped, NULL));
            TT_CHECK(tt_model_lora_merge(mapped) != TT_OK);
            TT_CHECK_CONTAINS(tt_error(ctx), "mapped");
            tt_model_destroy(m);
            m = tt_model_copy(mapped);                                            /* a copy owns float32 weights */
            TT_REQUIRE(m != NULL);
            TT_CHECK(tt_model_param(m, 3)->dtype == TT_F32 && !tt_model_param(m, 3)->lent);
            tt_model_destroy(m);
            tt_model_destroy(half);
            tt_model_destroy(mapped);
            tt_destroy(ctx);
            TT_CHECK_NO_LEAK(memory);
        }
    }
}
/* Older writers do not align the data: then nothing is lent, and all is read. */
TT_TEST(map_of_unaligned_data) {
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/unaligned");
    tt_model *m = tt_model_create(ctx, &c, 1), *mapped;
    char *bytes;
    size_t n, header;
    long fail, blocks;
    int lent_of = 0;
    TT_REQUIRE(m != NULL);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    n = 9 + 4 * tt_model_size(m) + 8192;
    bytes = (char *)malloc(n);
    TT_REQUIRE(bytes != NULL);
    n = load_bytes(in_dir(dir, "model.safetensors"), bytes, n);
    header = (unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1];
    memmove(bytes + 8 + header + 1, bytes + 8 + header, n - 8 - header);
    bytes[8 + header] = ' ';
    bytes[0] = (char)(bytes[0] + 1);                                              /* one space more */
    write_bytes(in_dir(dir, "model.safetensors"), bytes, n + 1);
    free(bytes);
    mapped = tt_model_map(ctx, dir);
    TT_REQUIRE(mapped != NULL);
    check_same_weights(m, mapped);
    TT_CHECK_INT(tt_model_param(mapped, 1)->lent, 0);
    TT_CHECK_INT(tt_model_param(mapped, 1)->requires_grad, 0);
    tt_model_destroy(mapped);
    TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
    blocks = memory.live_blocks;
    for (fail = 1; fail < 1000; fail++) {
        memory.fail_at = memory.calls + fail;
        mapped = tt_model_map(ctx, dir);
        memory.fail_at = 0;
        if (mapped) { check_same_weights(m, mapped); }
        TT_CHECK(mapped || tt_error_status(ctx) == TT_ERR_MEM);
        lent_of = mapped ? tt_model_param(mapped, 1)->lent : 0;
        tt_model_destroy(mapped);
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (mapped) { break; }
    }
    TT_CHECK(fail > 20 && fail < 1000);
    TT_CHECK_INT(lent_of, !TT_TEST_DEVICE);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- adapters of peft ---- */
#define ADAPTER(more) "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":3,\"target_modules\":[\"q_proj\"]" more "}"
static void check_lora(tt_model *m, const char *dir, const char *part1, const char *part2) {
    tt_context *ctx = tt_model_context(m);
    int n = tt_model_n_params(m);
    tt_error_clear(ctx);
    if (!TT_CHECK(tt_model_lora_load(m, dir) != TT_OK)) { printf("  accepted, expected %s %s\n", part1, part2); tt_model_lora_merge(m); return; }
    TT_CHECK_CONTAINS(tt_error(ctx), part1);
    TT_CHECK_CONTAINS(tt_error(ctx), part2);
    TT_CHECK_INT(tt_model_n_params(m), n);                                        /* nothing has changed */
    TT_CHECK(tt_model_param(m, 0)->requires_grad && !tt_model_lora_get(m));
}
TT_TEST(lora_directories) {
    static const struct { const char *json, *part1, *part2; } bad[] = {
        {"[]", "adapter_config.json", "target_modules"},
        {"{", "adapter_config.json", "JSON"},
        {ADAPTER(",\"use_dora\":true"), "use_dora", "true"},
        {ADAPTER(",\"bias\":\"all\""), "bias", "all"},
        {ADAPTER(",\"modules_to_save\":[\"lm_head\"]"), "modules_to_save", "list"},
        {ADAPTER(",\"rank_pattern\":{\"q_proj\":4}"), "rank_pattern", "object"},
        {ADAPTER(",\"alpha_pattern\":{\"q_proj\":4}"), "alpha_pattern", "object"},
        {ADAPTER(",\"layers_to_transform\":[0]"), "layers_to_transform", "list"},
        {ADAPTER(",\"lora_bias\":true"), "lora_bias", "true"},
        {ADAPTER(",\"trainable_token_indices\":[1]"), "trainable_token_indices", "list"},
        {ADAPTER(",\"r\":0"), "r is 0", "rank"},
        {ADAPTER(",\"r\":-3"), "r is -3", ""},
        {ADAPTER(",\"r\":100000"), "model/lora/adapter_config.json", "rank is 100000"},
        {ADAPTER(",\"r\":1e300"), "model/lora/adapter_config.json: r is 1e", "whole number"},
        {ADAPTER(",\"r\":65536"), "model/lora/adapter_model.safetensors", "[65536,16]"},
        {ADAPTER(",\"lora_alpha\":0"), "lora_alpha", "0"},
        {ADAPTER(",\"peft_type\":\"IA3\""), "peft_type", "IA3"},
        {ADAPTER(",\"target_modules\":\".*proj\""), "target_modules", ".*proj"},
        {ADAPTER(",\"target_modules\":[]"), "target_modules", ""},
        {ADAPTER(",\"target_modules\":[5]"), "target_modules", "5"},
        {ADAPTER(",\"target_modules\":null"), "target_modules", "missing"},
        {ADAPTER(",\"target_modules\":[\"q_proj\",\"lm_head\"]"), "target_modules[1]", "lm_head"},
        {ADAPTER(",\"r\":3"), "q_proj.lora_A.weight is [2,16]", "[3,16]"},
        {ADAPTER(",\"target_modules\":[\"q_proj\",\"o_proj\"]"), "o_proj.lora_A.weight", "missing"},
        {ADAPTER(",\"target_modules\":[\"model.layers.0.self_attn.q_proj\"]"), "layers.1.self_attn.q_proj", "no such tensor"},
    };
    static const char *const targets[] = {"q_proj"};
    tt_test_memory memory;
    tt_context *ctx = open_context(&memory);
    tt_model_config c = config_of(0);
    const char *dir = tt_test_tmp("model/lora");
    tt_model *m = tt_model_create(ctx, &c, 1), *other = tt_model_create(ctx, &c, 1);
    tt_lora_desc d = TT_INIT;
    tt_text json = TT_INIT;
    size_t i;
    long n, blocks;
    json.ctx = ctx;
    TT_REQUIRE(m != NULL && other != NULL);
    TT_CHECK(tt_model_lora_save(m, dir) != TT_OK);
    TT_CHECK_CONTAINS(tt_error(ctx), "no adapters");
    d.rank = 2;
    d.alpha = 3;
    d.use_rslora = 1;
    d.target_modules = targets;
    d.n_target_modules = 1;
    TT_CHECK_OK(ctx, tt_model_lora_add(m, &d));
    shake(m);
    TT_CHECK(tt_model_save(m, NULL, dir) != TT_OK);
    TT_CHECK_CONTAINS(tt_error(ctx), "adapters");
    TT_CHECK_OK(ctx, tt_model_lora_save(m, dir));
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_text(dir, "adapter_config.json", bad[i].json);
        check_lora(other, dir, bad[i].part1, bad[i].part2);
    }
    TT_CHECK(tt_memory_get(ctx).peak_bytes < ((size_t)1 << 22));                  /* shapes come before memory here, too */
    remove(in_dir(dir, "adapter_config.json"));
    check_lora(other, dir, "adapter_config.json", "");
    TT_CHECK_OK(ctx, tt_model_lora_save(m, dir));
    remove(in_dir(dir, "adapter_model.safetensors"));
    check_lora(other, dir, "adapter_model.safetensors", "");
    blocks = memory.live_blocks;
    for (n = 1; n < 300; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_lora_save(m, dir);
        memory.fail_at = 0;
        TT_CHECK_INT(memory.live_blocks, blocks);
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
    }
    TT_CHECK(n > 10 && n < 300);
    for (n = 1; n < 400; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_lora_load(other, dir);
        memory.fail_at = 0;
        if (status == TT_OK) { break; }
        TT_CHECK_INT(status, TT_ERR_MEM);
        TT_CHECK_INT(memory.live_blocks, blocks);
    }
    TT_CHECK(n > 20 && n < 400);
    TT_CHECK(tt_model_lora_get(other)->rank == 2 && tt_model_lora_get(other)->alpha == 3 && tt_model_lora_get(other)->use_rslora == 1);
    TT_CHECK_STR(tt_model_lora_get(other)->target_modules[0], "q_proj");
    for (i = (size_t)tt_model_n_params(other) - 8; i < (size_t)tt_model_n_params(other); i++) {
        TT_CHECK_STR(tt_model_param(other, (int)i)->name, tt_model_param(m, (int)i)->name);
        TT_CHECK(tt_test_same(tt_model_param(other, (int)i), tt_model_param(m, (int)i)));
        TT_CHECK_INT(tt_model_param(other, (int)i)->requires_grad, 1);
    }
    TT_CHECK_INT(tt_model_lora_load(other, dir), TT_ERR_ARG);
    tt_model_destroy(other);
    tt_model_destroy(m);
    m = tt_model_create(ctx, &c, 1);
    TT_CHECK_OK(ctx, tt_model_lora_add(m, NULL));                                 /* every matrix: the list is spelled out */
    TT_CHECK_OK(ctx, tt_model_lora_save(m, dir));
    TT_CHECK_OK(ctx, tt_file_read(ctx, in_dir(dir, "adapter_config.json"), &json));
    TT_CHECK_CONTAINS(json.data, "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]");
    tt_text_free(&json);
    tt_model_destroy(m);
    m = tt_model_create(ctx, &c, 1);
    put_text(dir, "adapter_config.json", "{\"r\":8,\"lora_alpha\":16,\"target_modules\":\"all-linear\"}");
    TT_CHECK_OK(ctx, tt_model_lora_load(m, dir));
    TT_CHECK_INT(tt_model_n_params(m), 3 + 4 * 9 + 4 * 7 * 2);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_MAIN(safetensors_types, safetensors_refuses, safetensors_header_lengths, json_limits, state_round_trip, state_file_layout, state_refuses_what_does_not_fit,
        state_each_prefix_and_bit_flip, state_written_by_another_program, state_that_is_not_finite_replaces_no_good_file, state_each_failing_allocation, state_full_disk_leaves_the_old_file, config_reads_each_family, config_refuses,
        config_token_ids_as_people_write_them,
        config_round_trip, config_json_refuses_what_a_family_lacks, config_each_failing_allocation, published_configs, model_round_trip, a_full_disk_leaves_no_half_of_a_model, a_folder_without_a_name_is_refused,
        model_with_tokenizer, model_files_that_do_not_fit, weights_of_a_tied_pair_under_either_name, a_pair_that_is_not_tied_needs_both, model_gpt2_prefix_and_buffers, model_shards,
        model_huge_config, model_each_failing_allocation, generation_config_is_read_and_kept, chat_template_is_read_and_kept, generation_config_refuses, errors_of_a_model_name_their_file,
        what_is_not_finite_replaces_no_good_file, save_in_shards,
        save_as_half_and_map, map_of_unaligned_data, lora_directories)
