/* A training step: forward, backward and AdamW in float32, tokens per second, and the most memory that was resident (on a
 * device: the most of its memory that was in use).
 *   build/bench_train [THREADS [PART]]
 * train_MODEL, memory_train_MODEL: models and sizes of the step stand in bench.h. share: six operations for each weight of a
 * matrix product and token, and the attention's products (causal: half of T x T) three times; recomputation does not count. */
#include "bench.h"

typedef struct training {
    const bench_model *shape;
    tt_context *ctx;
    tt_model *model;
    tt_optimizer *adamw;
    int32_t *tokens, *offsets;
} training;

static void training_begin(training *t, const bench_model *shape, int n_threads) {
    tt_model_config config = bench_config(shape);
    int n = shape->sequences * shape->length, i;
    memset(t, 0, sizeof *t);
    t->shape = shape;
    t->ctx = bench_context(n_threads);
    t->model = tt_model_create(t->ctx, &config, 1);
    bench_check(t->ctx, t->model != NULL);
    t->adamw = tt_adamw_create(t->model, NULL);
    t->tokens = (int32_t *)tt_alloc(t->ctx, (size_t)n, sizeof(int32_t));
    t->offsets = (int32_t *)tt_alloc(t->ctx, (size_t)shape->sequences + 1, sizeof(int32_t));
    bench_check(t->ctx, t->adamw && t->tokens && t->offsets);
    for (i = 0; i < n; i++) { t->tokens[i] = (int32_t)(tt_random(1, 0, (uint64_t)i) % (uint64_t)shape->vocab); }
    for (i = 0; i <= shape->sequences; i++) { t->offsets[i] = i * shape->length; }
}
static void training_end(training *t) {
    tt_free(t->ctx, t->tokens, (size_t)(t->shape->sequences * t->shape->length), sizeof(int32_t));
    tt_free(t->ctx, t->offsets, (size_t)t->shape->sequences + 1, sizeof(int32_t));
    tt_optimizer_destroy(t->adamw);
    tt_model_destroy(t->model);
    tt_destroy(t->ctx);
}
static double step_seconds(training *t) {
    tt_batch_desc batch = TT_INIT;
    double begin = tt_clock();
    batch.n_sequences = t->shape->sequences;
    batch.offsets = t->offsets;
    batch.tokens = t->tokens;
    tt_backward(t->ctx, tt_neg(t->ctx, tt_mean(t->ctx, tt_model_logprobs(t->model, tt_batch_create(t->ctx, &batch), 1, NULL))));
    bench_check(t->ctx, tt_optimizer_step(t->adamw, 1e-4f, NULL) == TT_OK);
    tt_step_reset(t->ctx);
    bench_sync(t->ctx);
    return tt_clock() - begin;
}
static double device_peak_bytes(const tt_context *ctx) {
#ifdef TT_CUDA
    return (double)tt_cuda_memory_get(ctx).peak_bytes;
#else
    (void)ctx;
    return 0;
#endif
}
static void bench(const bench_model *shape, int n_threads) {
    bench_figure f = TT_INIT;
    training t;
    char name[64];
    double seconds[BENCH_MAX_RUNS], total = 0, tokens = (double)shape->sequences * shape->length, work;
    int n = 0;
    snprintf(name, sizeof name, "memory_train_%s", shape->name);
    if (!shape->sequences || !bench_wants(name)) { return; }
    bench_peak_reset();
    training_begin(&t, shape, n_threads);
    step_seconds(&t);
    step_seconds(&t);
    for (; bench_again(n, total); n++) { total += seconds[n] = step_seconds(&t); }
    work = 6 * (bench_matrix_weights(t.model) + (double)shape->layers * shape->length * shape->hidden);
    f.name = name + strlen("memory_");
    f.unit = "tokens/s";
    f.threads = n_threads;
    f.ours = bench_rate_of(seconds, n, tokens);
    f.peak = BENCH_FMA;
    f.peak_rate = 1e-9 * work * f.ours.median;
    bench_print(&f);
    memset(&f, 0, sizeof f);
    f.name = name;
    f.unit = "MB";
    f.threads = n_threads;
    f.ours.median = f.ours.low = f.ours.high = 1e-6 * (bench_state.on_device ? device_peak_bytes(t.ctx) : bench_peak_bytes());
    bench_print(&f);
    training_end(&t);
}
static void run(int n_threads) {
    int i;
    for (i = 0; i < BENCH_N_MODELS; i++) { if (!bench_models[i].device || bench_state.on_device) { bench(&bench_models[i], n_threads); } }
}
int main(int argc, char **argv) { return bench_main(argc, argv, run); }
