/* Chapter 1: errors, memory, text, ids, files, JSON, random numbers. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

/* ---- errors ---- */
typedef struct log_count { int n; tt_status status; char text[256]; } log_count;
static void count_log(void *user, tt_status status, const char *text) {
    log_count *log = (log_count *)user;
    log->n++;
    log->status = status;
    snprintf(log->text, sizeof log->text, "%s", text);
}
TT_TEST(errors_are_replaced_and_stick_in_a_graph) {
    tt_desc desc = TT_INIT;
    log_count log;
    tt_context *ctx;
    memset(&log, 0, sizeof log);
    desc.log = count_log;
    desc.log_user = &log;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_STR(tt_error(ctx), "");
    TT_CHECK_INT(tt_error_status(ctx), TT_OK);
    TT_CHECK_INT(tt_fail(ctx, TT_ERR_ARG, "first: %s is %d", "x", 7), TT_ERR_ARG);
    TT_CHECK_STR(tt_error(ctx), "first: x is 7");
    TT_CHECK_INT(tt_fail(ctx, TT_ERR_IO, "second"), TT_ERR_IO);
    TT_CHECK_STR(tt_error(ctx), "second");
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_IO);
    TT_CHECK_INT(log.n, 2);
    TT_CHECK_STR(log.text, "second");
    tt_error_clear(ctx);
    TT_CHECK_STR(tt_error(ctx), "");

    {
        int shape[1] = {-3};
        char first[512];
        TT_CHECK(tt_zeros(ctx, 1, shape) == NULL);
        snprintf(first, sizeof first, "%s", tt_error(ctx));
        TT_CHECK(first[0] != 0);
        TT_CHECK_INT(tt_fail(ctx, TT_ERR_IO, "later"), TT_ERR_IO);     /* the graph's first cause stays */
        TT_CHECK_STR(tt_error(ctx), first);
        TT_CHECK(tt_scalar(ctx, 1.0f) == NULL);
        tt_step_reset(ctx);
        TT_CHECK_STR(tt_error(ctx), "");
        TT_CHECK(tt_scalar(ctx, 1.0f) != NULL);
    }
    tt_destroy(ctx);
}
TT_TEST(errors_without_a_context) {
    TT_CHECK_STR(tt_error(NULL), "out of memory");
    TT_CHECK_INT(tt_error_status(NULL), TT_ERR_MEM);
    TT_CHECK_INT(tt_fail(NULL, TT_ERR_ARG, "nowhere to go"), TT_ERR_ARG);
    TT_CHECK_STR(tt_status_name(TT_ERR_NUMBER), "number is not finite");
    TT_CHECK(tt_status_name((tt_status)-77) != NULL);
    tt_destroy(NULL);
}
TT_TEST(errors_longer_than_the_buffer_are_cut) {
    tt_context *ctx = tt_create(NULL);
    char text[4000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    tt_fail(ctx, TT_ERR_ARG, "%s", text);
    TT_CHECK(strlen(tt_error(ctx)) > 100 && strlen(tt_error(ctx)) < sizeof text);
    tt_destroy(ctx);
}
TT_TEST(bad_desc_fields_fail_every_call) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.n_threads = -1;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "n_threads");
    TT_CHECK(tt_scalar(ctx, 1.0f) == NULL);
    tt_error_clear(ctx);                                               /* cannot be cleared away */
    TT_CHECK_CONTAINS(tt_error(ctx), "n_threads");
    tt_destroy(ctx);
    desc.n_threads = 1;
    desc.kernel = "abacus";
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "abacus");
    TT_CHECK(tt_scalar(ctx, 1.0f) == NULL);
    tt_destroy(ctx);
}

/* ---- memory ---- */
TT_TEST(memory_is_counted_and_zeroed) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    size_t before, i;
    unsigned char *block;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    before = tt_memory_get(ctx).current_bytes;
    block = (unsigned char *)tt_alloc(ctx, 100, 7);
    TT_REQUIRE(block != NULL);
    for (i = 0; i < 700 && block[i] == 0; i++) {}
    TT_CHECK_INT(i, 700);
    TT_CHECK_INT(tt_memory_get(ctx).current_bytes - before, 700);
    TT_CHECK(tt_memory_get(ctx).peak_bytes >= before + 700);
    tt_free(ctx, block, 100, 7);
    TT_CHECK_INT(tt_memory_get(ctx).current_bytes, before);
    tt_free(ctx, NULL, 100, 7);
    block = (unsigned char *)tt_alloc(ctx, 0, 8);                      /* nothing is a block like any other */
    TT_CHECK(block != NULL);
    tt_free(ctx, block, 0, 8);
    TT_CHECK(tt_alloc(ctx, SIZE_MAX / 2, 3) == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_MEM);
    TT_CHECK(tt_alloc(ctx, SIZE_MAX, SIZE_MAX) == NULL);
    memory.fail_at = memory.calls + 1;
    TT_CHECK(tt_alloc(ctx, 4, 4) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "out of memory");
    TT_CHECK_INT(tt_memory_get(ctx).current_bytes, before);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(context_survives_each_failing_allocation) {
    long n;
    for (n = 1; n < 50; n++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        desc.allocator = tt_test_allocator(&memory);
        memory.fail_at = n;
        ctx = tt_create(&desc);
        if (ctx && memory.calls < n) { tt_destroy(ctx); break; }
        TT_CHECK(ctx == NULL || tt_error(ctx)[0] != 0);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(n > 1 && n < 50);
}

/* ---- text and ids ---- */
TT_TEST(text_appends_formats_quotes) {
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    size_t i;
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_text_append(&text, "", 0));
    TT_CHECK_STR(text.data, "");
    TT_CHECK_OK(ctx, tt_text_append(&text, "ab\0c", 4));
    TT_CHECK_INT(text.size, 4);
    TT_CHECK_BYTES(text.data, "ab\0c\0", 5);
    TT_CHECK_OK(ctx, tt_text_format(&text, "%d-%s", 42, "x"));
    TT_CHECK_BYTES(text.data, "ab\0c42-x\0", 9);
    tt_text_free(&text);
    TT_CHECK_INT(text.size + text.capacity, 0);
    TT_CHECK_OK(ctx, tt_text_json(&text, "a\"\\\n\t\x01\xc3\xa9", 8));
    TT_CHECK_STR(text.data, "\"a\\\"\\\\\\n\\u0009\\u0001\xc3\xa9\"");
    tt_text_free(&text);
    for (i = 0; i < 10000; i++) { tt_text_append(&text, "0123456789", 10); }
    TT_CHECK_INT(text.size, 100000);
    TT_CHECK_INT(text.data[99999], '9');
    TT_CHECK_INT(tt_text_append(&text, "x", SIZE_MAX - 10), TT_ERR_MEM);
    TT_CHECK_INT(text.size, 100000);
    tt_text_free(&text);
    tt_text_free(&text);
    tt_destroy(ctx);
}
/* Whatever bytes are quoted, the parser gives them back. */
TT_TEST(text_json_round_trip_of_each_byte) {
    tt_context *ctx = tt_create(NULL);
    char bytes[256];
    tt_text text = TT_INIT;
    tt_json *root;
    int i;
    text.ctx = ctx;
    for (i = 0; i < 256; i++) { bytes[i] = (char)(unsigned char)i; }
    TT_CHECK_OK(ctx, tt_text_json(&text, bytes, sizeof bytes));
    root = tt_json_parse(ctx, text.data, text.size);
    TT_REQUIRE(root != NULL);
    TT_CHECK_INT(root->length, 256);
    TT_CHECK_BYTES(root->string, bytes, 256);
    tt_json_free(ctx, root);
    tt_text_free(&text);
    tt_destroy(ctx);
}
TT_TEST(failed_append_changes_nothing) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_text text = TT_INIT;
    tt_ids ids = TT_INIT;
    static const int32_t values[5] = {5, 4, 3, 2, 1};
    int i;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    text.ctx = ids.ctx = ctx;
    tt_text_append(&text, "begin", 5);
    for (i = 0; i < 3; i++) { tt_ids_append(&ids, values, 5); }
    memory.fail_at = memory.calls + 1;
    memory.fail_all = 1;
    TT_CHECK_INT(tt_text_format(&text, "%100d", 1), TT_ERR_MEM);
    TT_CHECK_STR(text.data, "begin");
    TT_CHECK_INT(tt_text_json(&text, "0123456789", 10), TT_ERR_MEM);
    TT_CHECK_STR(text.data, "begin");
    TT_CHECK_INT(text.size, 5);
    TT_CHECK_INT(tt_ids_append(&ids, values, 5), TT_ERR_MEM);
    TT_CHECK_INT(ids.size, 15);
    TT_CHECK_INT(ids.data[14], 1);
    memory.fail_all = 0;
    TT_CHECK_OK(ctx, tt_ids_append(&ids, values, 5));
    TT_CHECK_INT(ids.data[15], 5);
    TT_CHECK_INT(tt_ids_append(&ids, values, SIZE_MAX / 4), TT_ERR_MEM);
    tt_text_free(&text);
    tt_ids_free(&ids);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- JSON ---- */
static const char document[] =
    "{\"a\": [1, -2.5e3, true, false, null, \"t\\u00e9\\n\\ud83d\\ude00\"],\r\n\t\"b\": {\"c\": {}, \"d\": []}, \"a\": 7, \"\": \"\\/\\b\\f\\r\\t\\\"\\\\\"}";

TT_TEST(json_document) {
    tt_context *ctx = tt_create(NULL);
    tt_json *root = tt_json_parse(ctx, document, sizeof document - 1);
    const tt_json *list;
    TT_REQUIRE(root != NULL);
    TT_CHECK_INT(root->type, TT_JSON_OBJECT);
    TT_CHECK_INT(root->length, 4);
    TT_CHECK_NEAR(tt_json_number(root, "a", -1), 7, 0);                /* the last one wins */
    list = root->child;
    TT_CHECK_STR(list->key, "a");
    TT_CHECK_INT(list->length, 6);
    list = list->child;
    TT_CHECK_NEAR(list->number, 1, 0);
    TT_CHECK_NEAR(list->next->number, -2500, 0);
    TT_CHECK_INT(list->next->next->type, TT_JSON_BOOL);
    TT_CHECK_NEAR(list->next->next->number, 1, 0);
    TT_CHECK_INT(list->next->next->next->type, TT_JSON_BOOL);
    TT_CHECK_INT(list->next->next->next->next->type, TT_JSON_NULL);
    TT_CHECK_STR(list->next->next->next->next->next->string, "t\xc3\xa9\n\xf0\x9f\x98\x80");
    TT_CHECK(tt_json_get(tt_json_get(root, "b"), "c")->child == NULL);
    TT_CHECK_STR(tt_json_text(root, "", "none"), "/\b\f\r\t\"\\");
    TT_CHECK_STR(tt_json_text(root, "zzz", "none"), "none");
    TT_CHECK_STR(tt_json_text(root, "a", "none"), "none");             /* a number is no text */
    TT_CHECK(tt_json_get(list, "a") == NULL);
    TT_CHECK(tt_json_get(NULL, "a") == NULL);
    tt_json_free(ctx, root);
    tt_json_free(ctx, NULL);
    tt_destroy(ctx);
}
static int parses(tt_context *ctx, const char *text, size_t size) {
    char *exact = (char *)malloc(size ? size : 1);        /* sanitizers see a read behind the end */
    tt_json *root;
    if (size) { memcpy(exact, text, size); }
    tt_error_clear(ctx);
    root = tt_json_parse(ctx, exact, size);
    TT_CHECK((root == NULL) == (tt_error(ctx)[0] != 0));
    free(exact);
    tt_json_free(ctx, root);
    return root != NULL;
}
TT_TEST(json_each_prefix_and_bit_flip) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    char copy[sizeof document];
    size_t n, i;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    for (n = 0; n < sizeof document - 1; n++) { TT_CHECK(!parses(ctx, document, n)); }
    for (i = 0; i < 8 * (sizeof document - 1); i++) {
        memcpy(copy, document, sizeof document);
        copy[i / 8] = (char)(copy[i / 8] ^ (1 << i % 8));
        parses(ctx, copy, sizeof document - 1);
    }
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(json_numbers) {
    static const struct { const char *text; double value; } good[] = {
        {"0", 0}, {"-0", 0}, {"10", 10}, {"-1.25", -1.25}, {"1e3", 1000}, {"1E+3", 1000}, {"25e-1", 2.5}, {"0.1", 0.1},
        {"1e400", HUGE_VAL}, {"9007199254740993", 9007199254740992.0}, {" 1 ", 1},
    };
    static const char *const bad[] = {"", " ", "01", "+1", "-", ".5", "1.", "1e", "1e+", "0x10", "1 2", "NaN", "Infinity", "-Infinity", "1_0", "--1"};
    tt_context *ctx = tt_create(NULL);
    char many[200];
    size_t i;
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        tt_json *root = tt_json_parse(ctx, good[i].text, strlen(good[i].text));
        TT_REQUIRE(root != NULL);
        TT_CHECK_NEAR(root->number, good[i].value, 0);
        tt_json_free(ctx, root);
    }
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) { if (!TT_CHECK(!parses(ctx, bad[i], strlen(bad[i])))) printf("  %s\n", bad[i]); }
    memset(many, '1', sizeof many);
    TT_CHECK(!parses(ctx, many, sizeof many));
    tt_destroy(ctx);
}
TT_TEST(json_refuses) {
    static const char *const bad[] = {
        "{", "}", "[", "]", "[1,]", "[,1]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{'a':1}", "[1 2]", "\"", "\"\\x\"", "\"\\u12g4\"",
        "\"\\u12\"", "\"a\nb\"", "\"\\", "tru", "nulll", "[1]]", "{\"a\":1}x", "// c\n1", "\xef\xbb\xbf{}",
    };
    tt_context *ctx = tt_create(NULL);
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) { if (!TT_CHECK(!parses(ctx, bad[i], strlen(bad[i])))) printf("  %s\n", bad[i]); }
    TT_CHECK(!parses(ctx, "[1]\0", 4));
    TT_CHECK(!parses(ctx, "{\"a\":\n  [1,\n   x]}", 17));
    TT_CHECK_CONTAINS(tt_error(ctx), "line 3 column 4");
    tt_destroy(ctx);
}
TT_TEST(json_escapes) {
    static const struct { const char *text, *value; size_t n; } cases[] = {
        {"\"\\u0041\"", "A", 1}, {"\"\\u0000\"", "\0", 1}, {"\"\\u07ff\"", "\xdf\xbf", 2}, {"\"\\uFFFF\"", "\xef\xbf\xbf", 3},
        {"\"\\uD800\"", "\xef\xbf\xbd", 3}, {"\"\\udc00x\"", "\xef\xbf\xbdx", 4}, {"\"\\ud800\\ud800\"", "\xef\xbf\xbd\xef\xbf\xbd", 6},
        {"\"\\ud800\\u0041\"", "\xef\xbf\xbd" "A", 4}, {"\"\\ud800\\n\"", "\xef\xbf\xbd\n", 4}, {"\"\\uDBFF\\uDFFF\"", "\xf4\x8f\xbf\xbf", 4},
    };
    tt_context *ctx = tt_create(NULL);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tt_json *root = tt_json_parse(ctx, cases[i].text, strlen(cases[i].text));
        TT_REQUIRE(root != NULL);
        TT_CHECK_INT(root->length, cases[i].n);
        TT_CHECK_BYTES(root->string, cases[i].value, cases[i].n + 1);  /* NUL-terminated */
        tt_json_free(ctx, root);
    }
    tt_destroy(ctx);
}
TT_TEST(json_depth_and_failing_allocation) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    static char deep[200001];
    int n;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    for (n = 120; n < 136; n++) {
        memset(deep, '[', (size_t)n);
        memset(deep + n, ']', (size_t)n);
        TT_CHECK_INT(parses(ctx, deep, 2 * (size_t)n), n <= 129);      /* the root has depth 0 */
    }
    memset(deep, '[', sizeof deep);
    TT_CHECK(!parses(ctx, deep, sizeof deep));
    TT_CHECK_CONTAINS(tt_error(ctx), "128");
    memory.fail_at = memory.calls + 1;
    TT_CHECK(tt_json_parse(ctx, document, sizeof document - 1) == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_MEM);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- random numbers ---- */
/* Known answers of Random123 (tests/kat_vectors, "philox4x32 10"): the first two words of each result. */
TT_TEST(philox_known_answers) {
    static const struct { uint64_t seed, stream, index; uint32_t word0, word1; } vectors[] = {
        {0, 0, 0, 0x6627e8d5u, 0xe169c58du},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, 0x408f276du, 0x41c83b0eu},
        {0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u, 0xd16cfe09u, 0x94fdccebu},
    };
    size_t i;
    for (i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint64_t bits = tt_random(vectors[i].seed, vectors[i].stream, vectors[i].index);
        TT_CHECK_INT((uint32_t)bits, vectors[i].word0);
        TT_CHECK_INT((uint32_t)(bits >> 32), vectors[i].word1);
    }
}
TT_TEST(rng_walks_the_index) {
    tt_rng rng = TT_INIT, wide;
    int i;
    rng.seed = 5;
    rng.stream = 9;
    for (i = 0; i < 20; i++) { TT_CHECK(tt_rng_next(&rng) == tt_random(5, 9, (uint64_t)i)); }
    TT_CHECK_INT(rng.index, 20);
    wide = rng;
    wide.index = UINT64_MAX;
    tt_rng_next(&wide);
    TT_CHECK_INT(wide.index, 0);
}
/* Moments and frequencies within five standard errors, in several streams. */
TT_TEST(rng_statistics) {
    enum { N = 100000, BINS = 10 };
    int stream, i;
    for (stream = 0; stream < 4; stream++) {
        double sum = 0, squares = 0, normal = 0, normal2 = 0, normal4 = 0, lag = 0, last = 0.5, chi = 0;
        int counts[BINS];
        tt_rng rng = TT_INIT;
        memset(counts, 0, sizeof counts);
        rng.stream = (uint64_t)stream;
        for (i = 0; i < N; i++) {
            double u = tt_rng_uniform(&rng), z = tt_rng_normal(&rng);
            int k = tt_rng_below(&rng, BINS);
            TT_REQUIRE(u >= 0 && u < 1 && k >= 0 && k < BINS && isfinite(z));
            sum += u;
            squares += u * u;
            lag += (u - 0.5) * (last - 0.5);
            last = u;
            normal += z;
            normal2 += z * z;
            normal4 += z * z * z * z;
            counts[k]++;
        }
        TT_CHECK_NEAR(sum / N, 0.5, 5 * sqrt(1.0 / 12 / N));
        TT_CHECK_NEAR(squares / N, 1.0 / 3, 5 * sqrt(4.0 / 45 / N));
        TT_CHECK_NEAR(lag / N, 0, 5 * (1.0 / 12) / sqrt((double)N));
        TT_CHECK_NEAR(normal / N, 0, 5 / sqrt((double)N));
        TT_CHECK_NEAR(normal2 / N, 1, 5 * sqrt(2.0 / N));
        TT_CHECK_NEAR(normal4 / N, 3, 5 * sqrt(96.0 / N));
        for (i = 0; i < BINS; i++) { chi += (counts[i] - N / BINS) * (double)(counts[i] - N / BINS) / (N / BINS); }
        TT_CHECK(chi > 0.5 && chi < 40);          /* nine degrees of freedom */
    }
}
TT_TEST(rng_bounds) {
    tt_rng rng = TT_INIT;
    int i, seen = 0;
    for (i = 0; i < 100; i++) {
        TT_CHECK_INT(tt_rng_below(&rng, 1), 0);
        seen |= 1 << tt_rng_below(&rng, 3);
        TT_CHECK(tt_rng_below(&rng, INT_MAX) >= 0);
    }
    TT_CHECK_INT(seen, 7);
}
TT_TEST(hash_differs) {
    TT_CHECK(tt_hash("a", 1, 0) == tt_hash("a", 1, 0));
    TT_CHECK(tt_hash("a", 1, 0) != tt_hash("b", 1, 0));
    TT_CHECK(tt_hash("a", 1, 0) != tt_hash("a", 1, 1));
    TT_CHECK(tt_hash("a\0", 2, 0) != tt_hash("a", 1, 0));
    TT_CHECK(tt_hash("", 0, 0) == tt_hash(NULL, 0, 0));
}

/* ---- files ---- */
static void check_file(tt_context *ctx, const char *path, const char *bytes, size_t size) {
    tt_text text = TT_INIT;
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &text));
    TT_CHECK_INT(text.size, size);
    if (text.size == size) { TT_CHECK_BYTES(text.data, bytes, size); }
    tt_text_free(&text);
}
static int file_exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) { fclose(file); }
    return file != NULL;
}
TT_TEST(file_round_trip) {
    tt_context *ctx = tt_create(NULL);
    const char *path = tt_test_tmp("base.bin");
    tt_text big = TT_INIT, text = TT_INIT;
    int i;
    big.ctx = text.ctx = ctx;
    for (i = 0; i < 70000; i++) { tt_text_append(&big, "\0a\r\n", 4); }
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, big.data, big.size));
    check_file(ctx, path, big.data, big.size);
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "", 0));
    check_file(ctx, path, "", 0);
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "xyz", 3));
    TT_CHECK(!file_exists(tt_test_tmp("base.bin.tmp")));
    TT_CHECK_OK(ctx, tt_text_append(&text, "before ", 7));
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &text));                  /* appends */
    TT_CHECK_STR(text.data, "before xyz");
    TT_CHECK_INT(tt_file_read(ctx, tt_test_tmp("no/such/file"), &text), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "no/such/file");
    TT_CHECK_STR(text.data, "before xyz");
    tt_text_free(&text);
    tt_text_free(&big);
    tt_destroy(ctx);
}
TT_TEST(file_directories) {
    tt_context *ctx = tt_create(NULL);
    char path[256], inside[300];
    snprintf(path, sizeof path, "%s", tt_test_tmp("dirs/a/b/c"));
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, path));
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, path));                         /* is there already */
    snprintf(inside, sizeof inside, "%s/", path);
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, inside));
    snprintf(inside, sizeof inside, "%s/file", path);
    TT_CHECK_OK(ctx, tt_file_write(ctx, inside, "1", 1));
    TT_CHECK(file_exists(inside));
    snprintf(inside, sizeof inside, "%s/file/below", path);            /* a file is no directory */
    TT_CHECK_INT(tt_make_dirs(ctx, inside), TT_ERR_IO);
    TT_CHECK(tt_error(ctx)[0] != 0);
    tt_destroy(ctx);
}
TT_TEST(file_failed_write_leaves_the_old_one) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    const char *path = tt_test_tmp("kept.txt");
    long n;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "old", 3));
    TT_CHECK_INT(tt_file_write(ctx, tt_test_tmp("missing/dir/x"), "new", 3), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "missing/dir/x");
    for (n = 1; n < 10; n++) {
        memory.fail_at = memory.calls + n;
        if (tt_file_write(ctx, path, "new", 3) == TT_OK) { break; }
        check_file(ctx, path, "old", 3);
        TT_CHECK(!file_exists(tt_test_tmp("kept.txt.tmp")));
    }
    TT_CHECK(n > 1 && n < 10);
    memory.fail_at = 0;
    check_file(ctx, path, "new", 3);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(file_write_to_a_full_disk) {
#ifdef TTI_POSIX
    const char *path = tt_test_tmp("full.txt"), *temporary = tt_test_tmp("full.txt.tmp");
    static char big[1 << 16];
    tt_context *ctx;
    int round;
    if (!file_exists("/dev/full")) { TT_SKIP("no /dev/full"); }
    ctx = tt_create(NULL);
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "old", 3));
    for (round = 0; round < 2; round++) {                              /* fails at closing, at writing */
        remove(temporary);
        TT_REQUIRE(symlink("/dev/full", temporary) == 0);
        TT_CHECK_INT(tt_file_write(ctx, path, big, round ? sizeof big : 10), TT_ERR_IO);
        TT_CHECK_CONTAINS(tt_error(ctx), "full.txt");
        check_file(ctx, path, "old", 3);
        TT_CHECK(!file_exists(temporary));
    }
    tt_destroy(ctx);
#else
    TT_SKIP("no /dev/full");
#endif
}

/* ---- threads ---- */
enum { TEAM_PARTS = 67 };
typedef struct counted { int ran[TEAM_PARTS], by[4][TEAM_PARTS]; } counted;
static void count_part(void *user, int part, int worker) {
    counted *c = (counted *)user;
    c->ran[part]++;
    c->by[worker][part]++;
}
TT_TEST(team_runs_each_part_once) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    int job, i, w, wrong = 0;
    desc.n_threads = 4;                                  /* more than a small machine has processors */
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_INT(tt_threads(ctx), 4);
    for (job = 0; job < 3000; job++) {
        int n = job % (TEAM_PARTS + 1);
        counted c;
        memset(&c, 0, sizeof c);
        TT_REQUIRE(tti_parallel(ctx, count_part, &c, n) == TT_OK);
        for (i = 0; i < TEAM_PARTS; i++) {
            int sum = 0;
            for (w = 0; w < 4; w++) { sum += c.by[w][i]; }
            wrong += c.ran[i] != (i < n) || sum != (i < n);
        }
        if (job % 500 == 0) { double until = tt_clock() + 0.002; while (tt_clock() < until) { } }      /* all fall asleep */
    }
    TT_CHECK_INT(wrong, 0);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(team_needs_memory_and_no_work) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    counted c;
    int i;
    memset(&c, 0, sizeof c);
    desc.n_threads = 3;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_OK(ctx, tti_parallel(ctx, count_part, &c, 0));
    TT_CHECK_OK(ctx, tti_parallel(ctx, count_part, &c, 1));
    TT_CHECK_INT(c.ran[0], 1);
#ifdef TTI_TEAM
    for (i = 1; i <= 2; i++) {
        memory.fail_at = memory.calls + i;
        TT_CHECK_INT(tti_parallel(ctx, count_part, &c, 2), TT_ERR_MEM);
        memory.fail_at = 0;
    }
#endif
    for (i = 0; i < 2; i++) { TT_CHECK_OK(ctx, tti_parallel(ctx, count_part, &c, 2)); }
    TT_CHECK_INT(c.ran[1], 2);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_MAIN(errors_are_replaced_and_stick_in_a_graph, errors_without_a_context, errors_longer_than_the_buffer_are_cut, bad_desc_fields_fail_every_call,
        memory_is_counted_and_zeroed, context_survives_each_failing_allocation, text_appends_formats_quotes, text_json_round_trip_of_each_byte,
        failed_append_changes_nothing, json_document, json_each_prefix_and_bit_flip, json_numbers, json_refuses, json_escapes,
        json_depth_and_failing_allocation, philox_known_answers, rng_walks_the_index, rng_statistics, rng_bounds, hash_differs,
        file_round_trip, file_directories, file_failed_write_leaves_the_old_one, file_write_to_a_full_disk,
        team_runs_each_part_once, team_needs_memory_and_no_work)
