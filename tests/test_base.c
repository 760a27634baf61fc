/* Chapter 1: errors, memory, text, ids, files, JSON, random numbers. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "../examples/evaluate.h"
#include "tt_test.h"
#include <locale.h>
#ifdef TT_TEST_POSIX
#include <dirent.h>
#include <sys/wait.h>
#endif

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
        snprintf(first, sizeof first, "%.500s", tt_error(ctx));
        TT_CHECK(first[0] != 0);
        TT_CHECK_INT(tt_fail(ctx, TT_ERR_IO, "later"), TT_ERR_IO);     /* the graph's first cause stays */
        TT_CHECK_STR(tt_error(ctx), first);
        TT_CHECK(tt_scalar(ctx, 1.0f) == NULL);
        TT_CHECK_INT(tt_eval(ctx), TT_ERR_SHAPE);
        tt_step_reset(ctx);
        TT_CHECK_STR(tt_error(ctx), first);                            /* can be read until the next step succeeds */
        TT_CHECK(tt_scalar(ctx, 1.0f) != NULL);
        TT_CHECK_STR(tt_error(ctx), first);
        TT_CHECK_INT(tt_eval(ctx), TT_OK);
        TT_CHECK_STR(tt_error(ctx), "");
        TT_CHECK_INT(tt_error_status(ctx), TT_OK);
    }
    tt_destroy(ctx);
}
static tt_status train_once(tt_context *ctx, int wrong) {
    int shape[1] = {2}, other[1] = {3};
    tt_tensor *x = tt_tensor_create(ctx, TT_F32, 1, shape, "x"), *y = tt_zeros(ctx, 1, wrong ? other : shape);
    tt_status status;
    x->requires_grad = 1;
    status = tt_backward(ctx, tt_sum(ctx, tt_mul(ctx, x, y)));
    tt_step_reset(ctx);
    tt_tensor_destroy(x);
    return status;
}
TT_TEST(error_of_a_step_is_readable_after_the_reset_and_gone_after_the_next_step) {
    tt_context *ctx = tt_create(NULL);
    int round;
    for (round = 0; round < 2; round++) {
        TT_CHECK_INT(train_once(ctx, 1), TT_ERR_SHAPE);
        TT_CHECK_CONTAINS(tt_error(ctx), "tt_mul");
        TT_CHECK_INT(tt_error_status(ctx), TT_ERR_SHAPE);
        TT_CHECK_OK(ctx, train_once(ctx, 0));
        TT_CHECK_STR(tt_error(ctx), "");
        TT_CHECK_INT(tt_error_status(ctx), TT_OK);
    }
    tt_destroy(ctx);
}
/* If memory is out while a reset makes one block of many, the reason of the step's end is still the one to read. */
TT_TEST(error_of_a_step_outlives_a_reset_without_memory) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    int shape[2] = {1000, 50}, large[2] = {1000, 20000}, wrong[1] = {-1}, i, k;
    desc.allocator = tt_test_allocator(&memory);
    desc.n_threads = 1;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    for (k = 0; k < 3; k++) {      /* the large one sooner in each step: the last reset finds much more memory than any has used */
        if (k > 0) { tt_step_reset(ctx); }
        for (i = 0; i < 32 - 10 * k; i++) { TT_CHECK(tt_zeros(ctx, 2, shape) != NULL); }
        TT_CHECK(tt_zeros(ctx, 2, large) != NULL);
    }
    TT_CHECK(tt_zeros(ctx, 1, wrong) == NULL);
    memory.fail_at = memory.calls + 1;
    memory.fail_all = 1;
    tt_step_reset(ctx);
    memory.fail_all = 0;
    TT_CHECK(memory.calls >= memory.fail_at);
    TT_CHECK_CONTAINS(tt_error(ctx), "-1");
    TT_CHECK(tt_zeros(ctx, 2, shape) != NULL);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(error_goes_when_the_same_call_succeeds_and_no_sooner) {
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    tt_json *root;
    char missing[300];
    snprintf(missing, sizeof missing, "%s", tt_test_tmp("no/such/file"));
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_write(ctx, tt_test_tmp("mended"), "{}", 2));
    TT_CHECK_INT(tt_file_read(ctx, missing, &text), TT_ERR_IO);
    root = tt_json_parse(ctx, "{}", 2);                                /* another call that succeeds */
    TT_CHECK_CONTAINS(tt_error(ctx), "no/such/file");
    TT_CHECK_OK(ctx, tt_file_read(ctx, tt_test_tmp("mended"), &text));
    TT_CHECK_STR(tt_error(ctx), "");
    tt_json_free(ctx, root);
    TT_CHECK(tt_json_parse(ctx, "{", 1) == NULL);
    root = tt_json_parse(ctx, "{}", 2);
    TT_CHECK_STR(tt_error(ctx), "");
    tt_json_free(ctx, root);
    TT_CHECK(tt_model_load(ctx, missing) == NULL);
    TT_CHECK_OK(ctx, tt_file_read(ctx, tt_test_tmp("mended"), &text));
    TT_CHECK_CONTAINS(tt_error(ctx), "no/such/file");                  /* of two things that are made, the error of the first */
    TT_CHECK_INT(tt_file_write(ctx, missing, "", 0), TT_ERR_IO);
    TT_CHECK_OK(ctx, tt_file_write(ctx, tt_test_tmp("mended"), "{}", 2));
    TT_CHECK_STR(tt_error(ctx), "");
    tt_text_free(&text);
    tt_destroy(ctx);
}
TT_TEST(errors_without_a_context) {
    TT_CHECK_STR(tt_error(NULL), "out of memory");
    TT_CHECK_INT(tt_error_status(NULL), TT_ERR_MEM);
    TT_CHECK_INT(tt_fail(NULL, TT_ERR_ARG, "nowhere to go"), TT_ERR_ARG);
    TT_CHECK_STR(tt_status_name(TT_ERR_NUMBER), "number is not finite");
    TT_CHECK(tt_status_name((tt_status)-77) != NULL);
    tt_error_clear(NULL);
    tt_destroy(NULL);
}
TT_TEST(errors_longer_than_the_buffer_are_cut) {
    tt_context *ctx = tt_create(NULL);
    static char text[20000];
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
    TT_CHECK(parses(ctx, many, sizeof many));                          /* of any length */
    {
        tt_json *root = tt_json_parse(ctx, "[123456789012345678901234567890, -2.50]", 39);
        TT_REQUIRE(root != NULL);
        TT_CHECK_STR(root->child->string, "123456789012345678901234567890");   /* the digits stay beside the number */
        TT_CHECK_INT(root->child->length, 30);
        TT_CHECK_NEAR(root->child->number, 123456789012345678901234567890.0, 0);
        TT_CHECK_STR(root->child->next->string, "-2.50");
        tt_json_free(ctx, root);
    }
    tt_destroy(ctx);
}

/* ---- numbers as text ---- */
static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static double read_number(const char *text) {
    double value = -77;
    TT_CHECK_INT(tt_number_read(text, strlen(text), &value), strlen(text));
    return value;
}
static const char *write_number(double value, int is_float) {
    static char text[48];
    text[tti_number_text(text, value, is_float)] = 0;
    return text;
}
TT_TEST(numbers_are_read_as_far_as_they_go) {
    static const struct { const char *text; size_t size; double value; } cases[] = {
        {"0", 1, 0}, {"-0", 2, 0}, {"+3", 2, 3}, {".5", 2, 0.5}, {"5.", 2, 5}, {"1e3x", 3, 1000}, {"1e", 1, 1}, {"1e+", 1, 1}, {"2E-2 ", 4, 0.02},
        {"1.2.3", 3, 1.2}, {"0,5", 1, 0}, {"0x10", 1, 0}, {"1e400", 5, HUGE_VAL}, {"-1e400", 6, -HUGE_VAL}, {"1e-400", 6, 0}, {"1e99999999999999999999", 22, HUGE_VAL},
        {"0e99999999999999999999", 22, 0}, {"1e-99999999999999999999", 23, 0}, {"00012", 5, 12}, {"9007199254740993", 16, 9007199254740992.0},
        {"9007199254740993.00000000000000000000000000001", 46, 9007199254740994.0}, {"4.9406564584124654e-324", 23, 4.9406564584124654e-324},
        {"2.4703282292062327e-324", 23, 0}, {"2.4703282292062328e-324", 23, 4.9406564584124654e-324}, {"1.7976931348623158e308", 22, 1.7976931348623157e308},
        {"1.7976931348623159e308", 22, HUGE_VAL}, {"2.2250738585072011e-308", 23, 2.2250738585072011e-308}, {"0.1e1", 5, 1},
    };
    static const char *const none[] = {"", "-", "+", ".", "-.", "e5", "x", " 1", "inf", "nan", ",5", "--1"};
    double value;
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        value = -77;
        if (!TT_CHECK_INT(tt_number_read(cases[i].text, strlen(cases[i].text), &value), cases[i].size) || !TT_CHECK(value == cases[i].value)) { printf("  %s\n", cases[i].text); }
    }
    for (i = 0; i < sizeof none / sizeof none[0]; i++) { TT_CHECK_INT(tt_number_read(none[i], strlen(none[i]), &value), 0); }
    TT_CHECK_INT(tt_number_read("123", 2, &value), 2);                 /* not behind the end */
    TT_CHECK_NEAR(value, 12, 0);
}
/* Digits but for zeros at the begin and at the end. */
static int significant(const char *text) {
    int n = 0, until = 0;
    for (; *text && *text != 'e'; text++) {
        n += *text >= '0' && *text <= '9' && (n || *text != '0');
        if (*text >= '1' && *text <= '9') { until = n; }
    }
    return until;
}
/* Against the C library in its own locale: random bits, powers of two with their neighbours, subnormals, decimals of few
 * digits and of many, and halves between neighbours. */
TT_TEST(numbers_are_read_and_written_exactly) {
    static char text[1300];
    tt_rng rng = TT_INIT;
    int i, k, wrong = 0, n = tt_test_exhaustive() ? 60000 : 10000;
    for (i = 0; i < n && wrong < 5; i++) {
        uint64_t bits = tt_rng_next(&rng);
        double value, back;
        float narrow;
        uint32_t half = (uint32_t)bits;
        int before = wrong;
        if (i % 4 == 1) { bits = (bits % 2046 + 1) << 52; bits += (uint64_t)(int64_t)(i % 3 - 1); }
        if (i % 8 == 2) { bits = (bits >> 12) >> (bits % 52); }
        memcpy(&value, &bits, sizeof value);
        memcpy(&narrow, &half, sizeof narrow);
        if (i % 8 == 3) { value = (double)(bits % 10000000) / 1000; }
        if (isfinite(value)) {
            const char *written = write_number(value, 0);
            size_t size = strlen(written);
            wrong += tt_number_read(written, size, &back) != size || bits_of(back) != bits_of(value) || bits_of(strtod(written, NULL)) != bits_of(value);
            for (k = 1; k < 17 && strtod((snprintf(text, sizeof text, "%.*e", k - 1, value), text), NULL) != value; k++) { }
            wrong += value != 0 && significant(written) > k;
            if (i % 16 == 0 && value != 0) {
                snprintf(text, sizeof text, "%.*e", k - 1, value);
                wrong += tt_number_read(text, strlen(text), &back) == 0 || bits_of(back) != bits_of(value);
            }
        }
        if (isfinite(narrow)) {
            tt_number_read(write_number((double)narrow, 1), strlen(write_number((double)narrow, 1)), &back);
            wrong += (float)back != narrow || significant(write_number((double)narrow, 1)) > 9;
        }
        k = snprintf(text, sizeof text, "%s%llu%09llu.%llue%d", i % 2 ? "-" : "", (unsigned long long)tt_rng_next(&rng), (unsigned long long)(tt_rng_next(&rng) % 1000000000),
                     (unsigned long long)(tt_rng_next(&rng) >> (bits % 64)), (int)(bits % 700) - 360);
        wrong += (int)tt_number_read(text, (size_t)k, &back) != k || bits_of(back) != bits_of(strtod(text, NULL));
        if (i % 64 == 5 && isfinite(value) && fabs(value) < 1e300) {   /* a tie to the last digit, and a little more than it */
            k = snprintf(text, sizeof text, "%.1100Lf", ((long double)value + (long double)nextafter(value, HUGE_VAL)) / 2);
            if (k >= (int)sizeof text) { continue; }
            wrong += tt_number_read(text, (size_t)k, &back) == 0 || bits_of(back) != bits_of(strtod(text, NULL));
            text[k - 1] = '1';
            wrong += tt_number_read(text, (size_t)k, &back) == 0 || bits_of(back) != bits_of(strtod(text, NULL));
        }
        if (wrong > before) { printf("  %.17g %s\n", value, text); }
    }
    TT_CHECK_INT(wrong, 0);
}
TT_TEST(numbers_are_written_in_the_fewest_digits) {
    static const struct { double value; const char *text; } cases[] = {
        {0, "0"}, {-0.0, "-0"}, {1, "1"}, {-2.5, "-2.5"}, {0.1, "0.1"}, {1e15, "1000000000000000"}, {1e16, "1e+16"}, {123456789012345678.0, "1.2345678901234568e+17"},
        {0.0001, "0.0001"}, {0.00001, "1e-05"}, {1e22, "1e+22"}, {1e23, "1e+23"}, {5e-324, "5e-324"}, {1.7976931348623157e308, "1.7976931348623157e+308"},
        {2.2250738585072014e-308, "2.2250738585072014e-308"}, {9007199254740992.0, "9007199254740992"}, {0.3, "0.3"}, {2.0 / 3, "0.6666666666666666"}, {5.684341886080802e-14, "5.684341886080802e-14"},
        {HUGE_VAL, "null"}, {-HUGE_VAL, "null"},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) { TT_CHECK_STR(write_number(cases[i].value, 0), cases[i].text); }
    TT_CHECK_STR(write_number(NAN, 0), "null");
    TT_CHECK_STR(write_number((double)0.1f, 0), "0.10000000149011612");
    TT_CHECK_STR(write_number((double)0.1f, 1), "0.1");
    TT_CHECK_STR(write_number((double)16777216.0f, 1), "16777216");
    TT_CHECK_STR(write_number((double)1e-45f, 1), "1e-45");
    TT_CHECK_STR(write_number((double)3.4028235e38f, 1), "3.4028235e+38");
}
static void check_formats(tt_context *ctx) {
    tt_text text = TT_INIT;
    char numbers[64];
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_text_format(&text, "%5.2f|%-9.3e|%g|%lu|%zu|%08.3f|%+d|%%|%c|%4s|%.*s|%*d|%llx|%hd|%r|%R|%s|%G", 0.5, 12345.678, 1e-7, 123ul, (size_t)7, -3.14159, 5, 'x', "ab", 2,
                                     "abcdef", -4, 42, 0xdeadbeefULL, 3, 0.1, (double)0.1f, "0,5", 1e300));
    TT_CHECK_STR(text.data, " 0.50|1.235e+04|1e-07|123|7|-003.142|+5|%|x|  ab|ab|42  |deadbeef|3|0.1|0.1|0,5|1E+300");
    TT_CHECK_INT(text.size, strlen(text.data));
    TT_CHECK_INT(tt_text_format(&text, "%n", NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "%n");
    tt_fail(ctx, TT_ERR_ARG, "x is %g, not %.3f", 0.25, 1.5);
    TT_CHECK_STR(tt_error(ctx), "x is 0.25, not 1.500");
    TT_CHECK_INT(tti_format(numbers, 6, "%s %.4f", "ab", 1.5), 9);     /* cut, and ended, like snprintf */
    TT_CHECK_STR(numbers, "ab 1.");
    tt_text_free(&text);
}
TT_TEST(formats_are_those_of_printf) {
    tt_context *ctx = tt_create(NULL);
    check_formats(ctx);
    tt_destroy(ctx);
}
/* A locale with a decimal comma, if the system has one or can make one. */
static int comma_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "German_Germany.1252"};
    char text[16];
    int i, round;
    for (round = 0; round < 2; round++) {
        for (i = 0; i < 4; i++) {
            if (!setlocale(LC_ALL, names[i])) { continue; }
            snprintf(text, sizeof text, "%.1f", 0.5);
            if (strcmp(text, "0,5") == 0) { return 1; }
        }
#ifdef TT_TEST_POSIX
        if (round == 0) {
            tt_test_mkdir(tt_test_tmp("locale"));
            if (system("localedef -i de_DE -f UTF-8 build/tmp/locale/de_DE.UTF-8 > build/tmp/locale/log 2>&1") != 0) { break; }
            setenv("LOCPATH", "build/tmp/locale", 1);
        }
#endif
    }
    setlocale(LC_ALL, "C");
    return 0;
}
TT_TEST(a_decimal_comma_of_the_host_changes_nothing) {
    static const char config_text[] = "{\"model_type\":\"llama\",\"vocab_size\":32,\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"rms_norm_eps\":0.00001,"
                                      "\"rope_theta\":10000.5,\"max_position_embeddings\":64}";
    tt_context *ctx = tt_create(NULL);
    tt_model_config config = TT_INIT;
    tt_model *model, *back;
    tt_text text = TT_INIT;
    tt_step_metrics metrics;
    tt_evaluation evaluation;
    tt_json *root;
    if (!comma_locale()) { tt_destroy(ctx); TT_SKIP("no locale with a decimal comma, and localedef makes none"); }
    text.ctx = ctx;
    check_formats(ctx);
    TT_CHECK_STR(write_number(0.5, 0), "0.5");
    TT_CHECK_NEAR(read_number("2.5e-1"), 0.25, 0);
    root = tt_json_parse(ctx, "{\"a\": 0.5}", 10);
    TT_CHECK_NEAR(tt_json_number(root, "a", -1), 0.5, 0);
    tt_json_free(ctx, root);
    TT_CHECK(tt_answer_equal("\\frac{1}{2}", 11, "0.5", 3));
    TT_CHECK(!tt_answer_equal("0.5", 3, "0.75", 4));
    TT_CHECK_OK(ctx, tt_model_config_parse(ctx, config_text, sizeof config_text - 1, &config));
    TT_CHECK(config.norm_eps == 0.00001f && config.rope_theta == 10000.5f);
    model = tt_model_create(ctx, &config, 1);
    TT_CHECK_OK(ctx, tt_model_save(model, NULL, tt_test_tmp("comma-model")));
    back = tt_model_load(ctx, tt_test_tmp("comma-model"));
    if (TT_CHECK(back != NULL)) { TT_CHECK(tt_model_config_get(back)->norm_eps == 0.00001f && tt_model_config_get(back)->rope_theta == 10000.5f); }
    memset(&metrics, 0, sizeof metrics);
    memset(&evaluation, 0, sizeof evaluation);
    metrics.grpo.reward = 0.1;
    evaluation.accuracy = 0.3;
    evaluation.n_pass = 1;
    TT_CHECK_OK(ctx, tt_metrics_json(&metrics, &text));
    root = tt_json_parse(ctx, text.data, text.size);
    if (TT_CHECK(root != NULL)) { TT_CHECK_NEAR(tt_json_number(root, "reward", -1), 0.1, 0); }
    tt_json_free(ctx, root);
    text.size = 0;
    TT_CHECK_OK(ctx, tt_evaluation_json(&evaluation, &text));
    root = tt_json_parse(ctx, text.data, text.size);
    if (TT_CHECK(root != NULL)) { TT_CHECK_NEAR(tt_json_number(root, "accuracy", -1), 0.3, 0); }
    tt_json_free(ctx, root);
    text.size = 0;
    {
        static const char *const names[] = {"a"};
        TT_CHECK_OK(ctx, tt_evaluation_table(&evaluation, names, 1, &text));
        TT_CHECK_CONTAINS(text.data, "30.0 [0.0, 0.0]");
    }
    setlocale(LC_ALL, "C");
    tt_text_free(&text);
    tt_model_destroy(back);
    tt_model_destroy(model);
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
/* Temporary files of ours in a folder. */
static int leftovers(const char *folder) {
#ifdef TT_TEST_POSIX
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int n = 0;
    while (dir && (entry = readdir(dir)) != NULL) { n += strncmp(entry->d_name, "tt-", 3) == 0 && strstr(entry->d_name, ".tmp"); }
    if (dir) { closedir(dir); }
    return n;
#else
    (void)folder;
    return 0;
#endif
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
    TT_CHECK(tt_file_exists(inside));
    snprintf(inside, sizeof inside, "%s/file/below", path);            /* a file is no directory */
    TT_CHECK_INT(tt_make_dirs(ctx, inside), TT_ERR_IO);
    TT_CHECK(tt_error(ctx)[0] != 0);
    snprintf(inside, sizeof inside, "%s/file", path);                  /* nor may it be asked for as one */
    TT_CHECK_INT(tt_make_dirs(ctx, inside), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "c/file");
    TT_CHECK_INT(tt_make_dirs(ctx, ""), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "empty");
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, "."));
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, "/"));
    TT_CHECK_INT(tt_file_write(ctx, "", "1", 1), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "empty");
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
        TT_CHECK_INT(leftovers("build/tmp"), 0);
    }
    TT_CHECK(n > 1 && n < 10);
    memory.fail_at = 0;
    check_file(ctx, path, "new", 3);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(file_write_to_a_full_disk) {
    const char *path = tt_test_tmp("full.txt");
    static char big[1 << 16];
    tt_context *ctx = tt_create(NULL);
    tt_status status;
    int round;
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "old", 3));
    for (round = 0; round < 2; round++) {                              /* fails at closing, at writing */
        if (!tt_test_disk(5)) { tt_destroy(ctx); TT_SKIP("no limit on the size of files"); }
        status = tt_file_write(ctx, path, big, round ? sizeof big : 10);
        tt_test_disk(-1);
        TT_CHECK_INT(status, TT_ERR_IO);
        TT_CHECK_CONTAINS(tt_error(ctx), "full.txt");
        check_file(ctx, path, "old", 3);
        TT_CHECK_INT(leftovers("build/tmp"), 0);
    }
    tt_destroy(ctx);
}
#ifdef TT_TEST_POSIX
/* What stands at a name as it is itself: 0 nothing, else its type. */
static unsigned kind_of(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 ? (unsigned)(info.st_mode & S_IFMT) : 0;
}
static void check_refused(tt_context *ctx, const char *path, unsigned kind, const char *word) {
    TT_CHECK_INT(tt_file_write(ctx, path, "new", 3), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), path);
    TT_CHECK_CONTAINS(tt_error(ctx), word);
    TT_CHECK_INT(tt_file_writable(ctx, path), TT_ERR_IO);
    TT_CHECK_INT(kind_of(path), kind);
    TT_CHECK_INT(leftovers("build/tmp/odd"), 0);
}
TT_TEST(file_refuses_what_is_no_regular_file) {
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    text.ctx = ctx;
    TT_REQUIRE(system("rm -rf build/tmp/odd") == 0);
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, "build/tmp/odd/folder"));
    TT_REQUIRE(mkfifo("build/tmp/odd/pipe", 0666) == 0);
    TT_REQUIRE(symlink("victim", "build/tmp/odd/link") == 0 && symlink("nowhere", "build/tmp/odd/dangling") == 0 && symlink("pipe", "build/tmp/odd/to-pipe") == 0);
    TT_CHECK_OK(ctx, tt_file_write(ctx, "build/tmp/odd/victim", "keep", 4));
    check_refused(ctx, "build/tmp/odd/folder", S_IFDIR, "a folder");
    check_refused(ctx, "build/tmp/odd/pipe", S_IFIFO, "a pipe");
    check_refused(ctx, "build/tmp/odd/link", S_IFLNK, "a symbolic link");
    check_refused(ctx, "build/tmp/odd/dangling", S_IFLNK, "a symbolic link");
    check_refused(ctx, "build/tmp/odd/to-pipe", S_IFLNK, "a symbolic link");
    check_file(ctx, "build/tmp/odd/victim", "keep", 4);
    TT_CHECK_INT(kind_of("build/tmp/odd/nowhere"), 0);
    TT_CHECK_INT(tt_file_writable(ctx, "build/tmp/odd/none/x"), TT_ERR_IO);
    TT_CHECK_OK(ctx, tt_file_writable(ctx, "build/tmp/odd/new"));
    TT_CHECK_INT(kind_of("build/tmp/odd/new"), 0);
    TT_CHECK_OK(ctx, tt_file_writable(ctx, "build/tmp/odd/victim"));
    check_file(ctx, "build/tmp/odd/victim", "keep", 4);
    /* reading follows a link, to a regular file; nothing else is waited for */
    check_file(ctx, "build/tmp/odd/link", "keep", 4);
    TT_CHECK_OK(ctx, tt_file_readable(ctx, "build/tmp/odd/link"));
    TT_CHECK_INT(tt_file_read(ctx, "build/tmp/odd/pipe", &text), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "odd/pipe: it is a pipe");
    TT_CHECK_INT(tt_file_read(ctx, "build/tmp/odd/to-pipe", &text), TT_ERR_IO);
    TT_CHECK_INT(tt_file_read(ctx, "build/tmp/odd/folder", &text), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "a folder");
    TT_CHECK_INT(tt_file_readable(ctx, "build/tmp/odd/pipe"), TT_ERR_IO);
    TT_CHECK(tt_safetensors_open(ctx, "build/tmp/odd/pipe") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "a pipe");
    TT_CHECK(tt_tokenizer_load(ctx, "build/tmp/odd/pipe") == NULL);
    if (tt_file_exists("/dev/zero")) {                                 /* an input without end */
        TT_CHECK_INT(tt_file_read(ctx, "/dev/zero", &text), TT_ERR_IO);
        TT_CHECK_CONTAINS(tt_error(ctx), "a device");
        TT_CHECK(tt_safetensors_open(ctx, "/dev/zero") == NULL);
    }
    if (system("mknod build/tmp/odd/node c 1 3 2> build/tmp/odd/log") == 0) { check_refused(ctx, "build/tmp/odd/node", S_IFCHR, "a device"); }
    else { printf("  a device node is left out: only root can make one\n"); }
    TT_CHECK(text.size == 0);
    tt_text_free(&text);
    tt_destroy(ctx);
}
TT_TEST(file_temporary_is_new_and_follows_no_link) {
    tt_context *ctx = tt_create(NULL);
    struct stat info;
    mode_t mask;
    TT_REQUIRE(system("rm -rf build/tmp/traps") == 0);
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, "build/tmp/traps"));
    TT_CHECK_OK(ctx, tt_file_write(ctx, "build/tmp/traps/victim", "keep", 4));
    TT_REQUIRE(symlink("victim", "build/tmp/traps/x.tmp") == 0);
    mask = umask(027);
    TT_CHECK_OK(ctx, tt_file_write(ctx, "build/tmp/traps/x", "new", 3));
    TT_REQUIRE(stat("build/tmp/traps/x", &info) == 0);
    TT_CHECK_INT(info.st_mode & 0777, 0640);                           /* what umask leaves */
    TT_REQUIRE(chmod("build/tmp/traps/x", 0604) == 0);
    TT_CHECK_OK(ctx, tt_file_write(ctx, "build/tmp/traps/x", "newer", 5));
    umask(mask);
    TT_REQUIRE(stat("build/tmp/traps/x", &info) == 0);
    TT_CHECK_INT(info.st_mode & 0777, 0604);                           /* what its owner said */
    check_file(ctx, "build/tmp/traps/x", "newer", 5);
    check_file(ctx, "build/tmp/traps/victim", "keep", 4);
    TT_CHECK_INT(kind_of("build/tmp/traps/x.tmp"), S_IFLNK);
    TT_CHECK_INT(leftovers("build/tmp/traps"), 0);
    {                                                                  /* a name as long as the system takes */
        char name[300];
        snprintf(name, sizeof name, "build/tmp/traps/%0255d", 7);
        TT_CHECK_OK(ctx, tt_file_write(ctx, name, "long", 4));
        check_file(ctx, name, "long", 4);
    }
    /* a name that another program takes just then: the next one */
    {
        FILE *file = tti_file_create("build/tmp/traps/new", 0666);
        TT_REQUIRE(file != NULL);
        fclose(file);
        TT_CHECK(tti_file_create("build/tmp/traps/new", 0666) == NULL && errno == EEXIST);
        TT_CHECK(tti_file_create("build/tmp/traps/x.tmp", 0666) == NULL && errno == EEXIST);
    }
    tt_destroy(ctx);
}
TT_TEST(file_beyond_the_limit_is_refused_by_its_name) {
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    const char *path = tt_test_tmp("sparse");
    FILE *file = fopen(path, "wb");
    text.ctx = ctx;
    TT_REQUIRE(file != NULL);
    if (ftruncate(fileno(file), (off_t)TT_MAX_FILE_BYTES + 1) != 0) { fclose(file); remove(path); tt_destroy(ctx); TT_SKIP("no file so large"); }
    fclose(file);
    TT_CHECK_INT(tt_file_read(ctx, path, &text), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "TT_MAX_FILE_BYTES");
    TT_CHECK_CONTAINS(tt_error(ctx), "sparse");
    TT_CHECK(text.size == 0);
    remove(path);
    tt_text_free(&text);
    tt_destroy(ctx);
}
TT_TEST(file_of_a_long_path_stands_where_it_was_said) {
    tt_context *ctx = tt_create(NULL);
    char path[2000] = "build/tmp/long";
    size_t n;
    TT_REQUIRE(system("rm -rf build/tmp/long") == 0);
    while ((n = strlen(path)) < 1500) { snprintf(path + n, sizeof path - n, "/%0200d", 1); }
    TT_CHECK_OK(ctx, tt_make_dirs(ctx, path));
    n = strlen(path);
    snprintf(path + n, sizeof path - n, "/file");
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "here", 4));
    check_file(ctx, path, "here", 4);
    TT_CHECK_INT(system("rm -rf build/tmp/long"), 0);
    tt_destroy(ctx);
}
/* ulimit -f: an error where SIGXFSZ is ignored; else the system's own end of the program, as for any other. */
TT_TEST(file_limit_of_the_system_is_an_error_or_the_signal) {
    int ignored;
    for (ignored = 0; ignored < 2; ignored++) {
        int status = 0;
        pid_t child;
        fflush(stdout);
        child = fork();
        if (child == 0) {
            tt_context *ctx = tt_create(NULL);
            tt_test_disk(5);
            signal(SIGXFSZ, ignored ? SIG_IGN : SIG_DFL);
            _exit(tt_file_write(ctx, "build/tmp/limited", "0123456789", 10) == TT_ERR_IO && strstr(tt_error(ctx), "limited") ? 3 : 4);
        }
        TT_REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
        if (ignored) { TT_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3); }
        else { TT_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ); }
        TT_CHECK(!tt_file_exists("build/tmp/limited"));
        TT_CHECK_INT(leftovers("build/tmp"), !ignored);
        TT_CHECK_INT(system("rm -f build/tmp/tt-*.tmp"), 0);
    }
}
#else
#define SKIP_POSIX(name) TT_TEST(name) { TT_SKIP("no POSIX"); }
SKIP_POSIX(file_refuses_what_is_no_regular_file)
SKIP_POSIX(file_temporary_is_new_and_follows_no_link)
SKIP_POSIX(file_beyond_the_limit_is_refused_by_its_name)
SKIP_POSIX(file_of_a_long_path_stands_where_it_was_said)
SKIP_POSIX(file_limit_of_the_system_is_an_error_or_the_signal)
#endif

/* ---- JSON lines ---- */
static int count_lines(tt_context *ctx, const char *bytes, size_t size, int *last_line, char *error, size_t error_size) {
    tt_json_lines lines = TT_INIT;
    tt_json *value;
    int n = 0;
    tt_status status;
    lines.ctx = ctx;
    tt_error_clear(ctx);
    TT_CHECK_OK(ctx, tt_file_write(ctx, tt_test_tmp("rows.jsonl"), bytes, size));
    status = tt_json_lines_open(&lines, tt_test_tmp("rows.jsonl"));
    while (status == TT_OK && (status = tt_json_lines_next(&lines, &value)) == TT_OK && value) {
        n++;
        *last_line = lines.line;
        tt_json_free(ctx, value);
    }
    snprintf(error, error_size, "%.500s", status == TT_OK ? "" : tt_error(ctx));
    tt_json_lines_close(&lines);
    return n;
}
TT_TEST(json_lines_as_people_have_them) {
    static const struct { const char *text; size_t size; int n, last; const char *error; } cases[] = {
        {"", 0, 0, 0, ""}, {"\n\n", 2, 0, 0, ""}, {"1\n2\n", 4, 2, 2, ""}, {"1\n2", 3, 2, 2, ""}, {"1\r\n2\r\n", 6, 2, 2, ""},
        {"\xef\xbb\xbf{}\n[]\n", 9, 2, 2, ""}, {"\xef\xbb\xbf", 3, 0, 0, ""}, {"\xef\xbb\xbf\n\n1", 6, 1, 3, ""},
        {"  \t \r\n1\n \n\t\n2\n   ", 17, 2, 5, ""}, {"1\n{\n3", 5, 1, 1, "rows.jsonl line 2: JSON"}, {"1\n\xef\xbb\xbf" "2", 6, 1, 1, "line 2"},
        {"1\n\n{\"a\":{\"b\":[\"x\\u0000y\"]}}", 27, 1, 1, "line 3: \"a list\" has the character U+0000"},
        {"{\"a\":\"\\u0000\"}", 14, 0, 0, "line 1: \"a\" has the character U+0000"}, {"{\"a\":\"x\0y\"}", 11, 0, 0, "control character"},
        {"1\n\0\n2", 5, 1, 1, "line 2"},
    };
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    char error[600];
    size_t i;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int last = 0;
        if (!TT_CHECK_INT(count_lines(ctx, cases[i].text, cases[i].size, &last, error, sizeof error), cases[i].n) || !TT_CHECK_INT(last, cases[i].last)) { printf("  case %d\n", (int)i); }
        if (cases[i].error[0]) { TT_CHECK_CONTAINS(error, cases[i].error); } else { TT_CHECK_STR(error, ""); }
    }
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
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

TT_MAIN(errors_are_replaced_and_stick_in_a_graph, error_of_a_step_is_readable_after_the_reset_and_gone_after_the_next_step,
        error_of_a_step_outlives_a_reset_without_memory, error_goes_when_the_same_call_succeeds_and_no_sooner,
        errors_without_a_context, errors_longer_than_the_buffer_are_cut, bad_desc_fields_fail_every_call,
        memory_is_counted_and_zeroed, context_survives_each_failing_allocation, text_appends_formats_quotes, text_json_round_trip_of_each_byte,
        failed_append_changes_nothing, json_document, json_each_prefix_and_bit_flip, json_numbers, numbers_are_read_as_far_as_they_go, numbers_are_read_and_written_exactly,
        numbers_are_written_in_the_fewest_digits, formats_are_those_of_printf, a_decimal_comma_of_the_host_changes_nothing, json_refuses, json_escapes,
        json_depth_and_failing_allocation, philox_known_answers, rng_walks_the_index, rng_statistics, rng_bounds, hash_differs,
        file_round_trip, file_directories, file_failed_write_leaves_the_old_one, file_write_to_a_full_disk, file_refuses_what_is_no_regular_file,
        file_temporary_is_new_and_follows_no_link, file_beyond_the_limit_is_refused_by_its_name, file_of_a_long_path_stands_where_it_was_said,
        file_limit_of_the_system_is_an_error_or_the_signal, json_lines_as_people_have_them,
        team_runs_each_part_once, team_needs_memory_and_no_work)
