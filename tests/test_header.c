/* The header as a guest in a program: several translation units (header_second.c, header_static.c), several
 * contexts in several threads, a version, no output, no signals of its own. What the object file exports and
 * calls is checked by tests/strict.sh. */
#include "../thinktuning.h"
#include "tt_test.h"

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
#define HAVE_POSIX 1
#endif

int header_second_sum(int a, int b);
int header_static_sum(int a, int b);
uint64_t header_static_random(uint64_t seed);

TT_TEST(version_has_three_numbers) {
    int major = -1, minor = -1, patch = -1;
    char rest = 0;
    TT_CHECK_INT(sscanf(TT_VERSION, "%d.%d.%d%c", &major, &minor, &patch, &rest), 3);
    TT_CHECK(major >= 0 && minor >= 0 && patch >= 0);
}

TT_TEST(version_is_that_of_the_first_line) {
    char line[256] = "";
    FILE *file = fopen("thinktuning.h", "r");
    TT_REQUIRE(file != NULL);
    TT_CHECK(fgets(line, sizeof line, file) != NULL);
    fclose(file);
    TT_CHECK_CONTAINS(line, "v" TT_VERSION " ");
}

TT_TEST(second_unit_uses_this_implementation) { TT_CHECK_INT(header_second_sum(2, 3), 5); }

TT_TEST(static_copy_stands_beside_this_one) {
    TT_CHECK_INT(header_static_sum(20, 22), 42);
    TT_CHECK(header_static_random(7) == tt_random(7, 1, 2));
    TT_CHECK(header_static_random(7) != tt_random(8, 1, 2));
}

TT_TEST(status_names) {
#define CHECK_NAME(name, value, text) TT_CHECK_STR(tt_status_name(name), text); TT_CHECK_INT(name, value);
    TT_STATUS_LIST(CHECK_NAME)
#undef CHECK_NAME
    TT_CHECK(tt_status_name((tt_status)1) != NULL);
    TT_CHECK(tt_status_name((tt_status)-99) != NULL);
}

TT_TEST(null_context_is_explained) {
    TT_CHECK(tt_error(NULL) != NULL && tt_error(NULL)[0] != 0);
    tt_destroy(NULL);
}

/* Sum of all gradients of a small model after one backward, as bits: any crosstalk would change it. */
static uint64_t train_hash(tt_context *ctx, uint64_t seed) {
    tt_model_config config = TT_INIT;
    tt_batch_desc desc = TT_INIT;
    int32_t tokens[24], offsets[] = {0, 5, 24};
    tt_model *model;
    uint64_t hash = seed;
    int i;
    config.vocab_size = 32;
    config.hidden_size = 32;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    model = tt_model_create(ctx, &config, seed);
    if (!model) return 0;
    for (i = 0; i < 24; i++) tokens[i] = (int32_t)(tt_random(seed, 9, (uint64_t)i) % 32);
    desc.n_sequences = 2;
    desc.offsets = offsets;
    desc.tokens = tokens;
    if (tt_backward(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &desc), 1.0f, NULL))) != TT_OK) hash = 0;
    for (i = 0; hash && i < tt_model_n_params(model); i++) {
        tt_tensor *p = tt_model_param(model, i);
        float *values = (float *)malloc(p->size * sizeof(float));
        if (!values || tt_tensor_get_grad(p, values) != TT_OK) hash = 0;
        else hash = tt_hash(values, p->size * sizeof(float), hash);
        free(values);
    }
    if (hash) tt_step_reset(ctx);   /* after a failure it would clear the error, which the caller reads */
    tt_model_destroy(model);
    return hash;
}

#ifdef HAVE_POSIX
typedef struct worker {
    uint64_t seed, hash[8];
    int failures;
} worker;

/* Eight models and, between them, an error whose text names this worker. */
static void *work(void *user) {
    worker *w = (worker *)user;
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    char expected[64];
    int i;
    desc.n_threads = 2;
    ctx = tt_create(&desc);
    if (!ctx) {
        w->failures++;
        return NULL;
    }
    for (i = 0; i < 8; i++) {
        w->hash[i] = train_hash(ctx, w->seed + (uint64_t)i);
        snprintf(expected, sizeof expected, "worker %lu", (unsigned long)w->seed);
        tt_fail(ctx, TT_ERR_ARG, "worker %lu", (unsigned long)w->seed);
        if (strcmp(tt_error(ctx), expected) != 0) w->failures++;
        tt_error_clear(ctx);
    }
    tt_destroy(ctx);
    return NULL;
}

TT_TEST(contexts_in_threads_do_not_meet) {
    worker alone[2], together[2];
    pthread_t threads[2];
    int i, k;
    memset(alone, 0, sizeof alone);
    memset(together, 0, sizeof together);
    for (i = 0; i < 2; i++) {
        alone[i].seed = together[i].seed = 100u * (unsigned)(i + 1);
        work(&alone[i]);
    }
    for (i = 0; i < 2; i++) TT_REQUIRE(pthread_create(&threads[i], NULL, work, &together[i]) == 0);
    for (i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < 2; i++) {
        TT_CHECK_INT(alone[i].failures + together[i].failures, 0);
        for (k = 0; k < 8; k++) {
            TT_CHECK(alone[i].hash[k] != 0);
            TT_CHECK(alone[i].hash[k] == together[i].hash[k]);
        }
    }
    TT_CHECK(alone[0].hash[0] != alone[1].hash[0]);
}

/* Errors of every kind, a model and a missing file, while stdout and stderr lead into a file. */
static void be_noisy(void) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config config = TT_INIT;
    if (!ctx) return;
    train_hash(ctx, 3);
    tt_model_create(ctx, &config, 0);
    tt_model_load(ctx, "build/tmp/no such directory");
    tt_tokenizer_load(ctx, "build/tmp/no such file");
    tt_json_free(ctx, tt_json_parse(ctx, "{", 1));
    tt_add(ctx, NULL, NULL);
    tt_backward(ctx, NULL);
    tt_destroy(ctx);
}

TT_TEST(nothing_is_printed) {
    const char *path = tt_test_tmp("header_output");
    struct stat info;
    int file, out, err;
    fflush(stdout);
    fflush(stderr);
    file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0666);
    TT_REQUIRE(file >= 0);
    out = dup(1);
    err = dup(2);
    dup2(file, 1);
    dup2(file, 2);
    be_noisy();
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    close(file);
    TT_REQUIRE(stat(path, &info) == 0);
    TT_CHECK_INT(info.st_size, 0);
}
#else
TT_TEST(contexts_in_threads_do_not_meet) { TT_SKIP("no POSIX threads"); }
TT_TEST(nothing_is_printed) { TT_SKIP("no POSIX files"); }
#endif

/* Every error reaches the log callback once, as the text that tt_error gives. */
static void count_log(void *user, tt_status status, const char *text) {
    if (status != TT_OK && text && text[0]) ++*(int *)user;
}

TT_TEST(log_hears_each_error_once) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    int count = 0;
    desc.log = count_log;
    desc.log_user = &count;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    train_hash(ctx, 5);
    TT_CHECK_INT(count, 0);
    TT_CHECK(tt_tokenizer_load(ctx, "build/tmp/no such file") == NULL);
    TT_CHECK_INT(count, 1);
    tt_destroy(ctx);
}

TT_TEST(bad_kernel_name_is_explained) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.kernel = "abacus";
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK(tt_scalar(ctx, 1.0f) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "abacus");
    tt_destroy(ctx);
}

/* Fails each allocation in turn, then each and all after it: an error comes back and nothing leaks. */
TT_TEST(every_allocation_may_fail) {
    int fail_all;
    long n;
    for (fail_all = 0; fail_all < 2; fail_all++) {
        for (n = 1; n < 100000; n++) {
            tt_test_memory memory = tt_test_memory_none();
            tt_desc desc = TT_INIT;
            tt_context *ctx;
            uint64_t hash = 0;
            memory.fail_at = n;
            memory.fail_all = fail_all;
            desc.allocator = tt_test_allocator(&memory);
            ctx = tt_create(&desc);
            if (ctx) {
                hash = train_hash(ctx, 11);
                if (!hash) TT_CHECK(tt_error(ctx)[0] != 0);
            }
            tt_destroy(ctx);
            TT_CHECK_NO_LEAK(memory);
            if (memory.calls < n) {
                TT_CHECK(hash != 0);
                break;
            }
            if (tt_test_now()->failures) {
                printf("  allocation %ld\n", n);
                return;
            }
        }
        TT_CHECK(n > 10 && n < 100000);
    }
}

TT_MAIN(version_has_three_numbers, version_is_that_of_the_first_line, second_unit_uses_this_implementation,
        static_copy_stands_beside_this_one, status_names, null_context_is_explained, contexts_in_threads_do_not_meet,
        nothing_is_printed, log_hears_each_error_once, bad_kernel_name_is_explained, every_allocation_may_fail)
