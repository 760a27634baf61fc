/* Sampling: tokens per second of tt_generate, all of a run by all of its sequences; and the time to the first token.
 *   build/bench_generate [THREADS [PART]]
 * decode_MODEL_bN: N sequences at once, float32, models of bench.h with random weights. decode_smollm2_TYPE_bN: weights of
 * build/real-model (make real-model), mapped. first_token_15m: from before the exec of a process that maps a model of that
 * size, 61 MB on disk, until the token is there. share: of one sequence, its weights read once per token; of more, two
 * operations for each weight and token. On a device: 1, 64 and 256 sequences of GPT-2 124M and of Llama 3.2 1B. */
#include "bench.h"
#include <sys/wait.h>

enum { MAX_SEQUENCES = 128 };
static const char real_model[] = "build/real-model/SmolLM2-135M-Instruct", real_model_bf16[] = "build/bench/smollm2-bf16", small_model[] = "build/bench/15m";

/* One prompt of one token for one sequence, or for n samples that go on from it. */
static double generate_seconds(tt_model *model, int n_sequences, int n_tokens) {
    static const int32_t prompt[] = {1};
    tt_context *ctx = tt_model_context(model);
    tt_sampling s = TT_INIT;
    tt_request request = TT_INIT;
    tt_completions out;
    double begin = tt_clock();
    size_t wanted = (size_t)n_sequences * (size_t)n_tokens;
    request.prompt = prompt;
    request.prompt_length = 1;
    request.n = n_sequences;
    s.max_new_tokens = n_tokens;
    s.max_batch = n_sequences;
    s.greedy = n_sequences == 1;
    bench_check(ctx, tt_generate(model, &request, 1, &s, &out) == TT_OK && out.n_tokens == wanted);
    tt_completions_free(&out);
    tt_step_reset(ctx);
    return tt_clock() - begin;
}
static void bench(const char *name, tt_model *model, double weight_bytes, int n_sequences, int n_tokens) {
    bench_figure f = TT_INIT;
    double seconds[BENCH_MAX_RUNS], total = 0;
    int n = 0;
    generate_seconds(model, n_sequences, n_tokens < 8 ? n_tokens : 8);
    for (; bench_again(n, total); n++) { total += seconds[n] = generate_seconds(model, n_sequences, n_tokens); }
    f.name = name;
    f.unit = "tokens/s";
    f.threads = tt_threads(tt_model_context(model));
    f.ours = bench_rate_of(seconds, n, (double)n_sequences * n_tokens);
    f.peak = n_sequences == 1 ? BENCH_READ : BENCH_FMA;
    f.peak_rate = 1e-9 * f.ours.median * (n_sequences == 1 ? weight_bytes : 2 * bench_matrix_weights(model));
    bench_print(&f);
}
static void bench_random(const char *model_name, int n_threads, int n_sequences, int n_tokens) {
    tt_model_config config = bench_config(bench_model_find(model_name));
    tt_context *ctx;
    tt_model *model;
    char name[64];
    snprintf(name, sizeof name, "decode_%s_b%d", model_name, n_sequences);
    if (!bench_wants(name)) { return; }
    ctx = bench_context(n_threads);
    model = tt_model_create(ctx, &config, 1);
    bench_check(ctx, model != NULL);
    bench(name, model, 4 * bench_matrix_weights(model), n_sequences, n_tokens);
    tt_model_destroy(model);
    tt_destroy(ctx);
}

/* ---- weights of a directory ---- */
static int there(const char *dir) {
    char path[256];
    FILE *file;
    snprintf(path, sizeof path, "%s/config.json", dir);
    file = fopen(path, "rb");
    if (file) { fclose(file); }
    return file != NULL;
}
static void bench_mapped(const char *type, const char *dir, double bytes, int n_threads, int n_sequences) {
    tt_context *ctx;
    tt_model *model;
    char name[64];
    snprintf(name, sizeof name, "decode_smollm2_%s_b%d", type, n_sequences);
    if (!bench_wants(name)) { return; }
    ctx = bench_context(n_threads);
    model = tt_model_map(ctx, dir);
    bench_check(ctx, model != NULL);
    bench(name, model, bytes * bench_matrix_weights(model), n_sequences, n_sequences == 1 ? 128 : 32);
    tt_model_destroy(model);
    tt_destroy(ctx);
}
/* The bf16 copy is made once. */
static void bench_real(int n_threads) {
    if (!bench_wants("decode_smollm2_f32_b1") && !bench_wants("decode_smollm2_f32_b32") && !bench_wants("decode_smollm2_bf16_b1") && !bench_wants("decode_smollm2_bf16_b32")) { return; }
    if (!there(real_model)) {
        printf("skip decode_smollm2: no %s (make real-model)\n", real_model);
        return;
    }
    if (!there(real_model_bf16)) {
        tt_context *ctx = bench_context(n_threads);
        tt_model *model = tt_model_map(ctx, real_model);
        tt_save_desc save = TT_INIT;
        save.dtype = TT_BF16;
        bench_check(ctx, model && tt_make_dirs(ctx, real_model_bf16) == TT_OK && tt_model_save_as(model, NULL, real_model_bf16, &save) == TT_OK);
        tt_model_destroy(model);
        tt_destroy(ctx);
    }
    bench_mapped("f32", real_model, 4, n_threads, 1);
    bench_mapped("f32", real_model, 4, n_threads, 32);
    bench_mapped("bf16", real_model_bf16, 2, n_threads, 1);
    bench_mapped("bf16", real_model_bf16, 2, n_threads, 32);
}

/* ---- the first token ---- */
static int first_token(int n_threads, const char *dir) {
    tt_context *ctx = bench_context(n_threads);
    tt_model *model = tt_model_map(ctx, dir);
    bench_check(ctx, model != NULL);
    generate_seconds(model, 1, 1);
    if (write(STDOUT_FILENO, "1", 1) != 1) { return 1; }
    tt_model_destroy(model);
    tt_destroy(ctx);
    return 0;
}
static const char *program;
/* From before the fork until the child's byte. */
static double first_token_seconds(int n_threads) {
    char threads[16], byte;
    int ends[2], status;
    ssize_t got;
    pid_t child;
    double begin = tt_clock(), seconds;
    snprintf(threads, sizeof threads, "%d", n_threads);
    if (pipe(ends) != 0 || (child = fork()) < 0) { perror("bench_generate"); exit(1); }
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execl(program, program, "--first-token", threads, small_model, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    got = read(ends[0], &byte, 1);
    seconds = tt_clock() - begin;
    close(ends[0]);
    if (waitpid(child, &status, 0) < 0 || status != 0 || got != 1) { fprintf(stderr, "bench_generate: no first token\n"); exit(1); }
    return seconds;
}
static void bench_first_token(int n_threads) {
    bench_figure f = TT_INIT;
    double ms[9];
    int i;
    if (!bench_wants("first_token_15m")) { return; }
    if (!there(small_model)) {
        tt_context *ctx = bench_context(n_threads);
        tt_model_config config = bench_config(bench_model_find("15m"));
        tt_model *model = tt_model_create(ctx, &config, 1);
        bench_check(ctx, model && tt_make_dirs(ctx, small_model) == TT_OK && tt_model_save(model, NULL, small_model) == TT_OK);
        tt_model_destroy(model);
        tt_destroy(ctx);
    }
    first_token_seconds(n_threads);
    for (i = 0; i < 9; i++) { ms[i] = 1e3 * first_token_seconds(n_threads); }
    f.name = "first_token_15m";
    f.unit = "ms";
    f.threads = n_threads;
    f.ours = bench_stat_of(ms, 9);
    bench_print(&f);
}

static void run(int n_threads) {
    if (bench_state.on_device) {
        static const char *const models[] = {"gpt2_124m", "llama_1b"};
        int i;
        if (getenv("BENCH_SMALL")) { bench_random("demo", n_threads, 2, 8); return; }
        for (i = 0; i < 2; i++) {
            bench_random(models[i], n_threads, 1, 128);
            bench_random(models[i], n_threads, 64, 128);
            bench_random(models[i], n_threads, 256, 128);
        }
        return;
    }
    bench_random("demo", n_threads, 1, 128);
    bench_random("demo", n_threads, MAX_SEQUENCES, 128);
    bench_random("15m", n_threads, 1, 128);
    bench_random("110m", n_threads, 1, 32);
    bench_random("110m", n_threads, 64, 32);
    bench_real(n_threads);
    bench_first_token(n_threads);
}
int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 4 && strcmp(argv[1], "--first-token") == 0) { return first_token(atoi(argv[2]), argv[3]); }
    return bench_main(argc, argv, run);
}
