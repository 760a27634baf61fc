/* One training step whose sequences are shared by the processes of mpirun, and what summing the gradients costs of it.
 *   build/bench_parallel [threads]                          one process
 *   mpirun -np 2 build/bench_parallel-mpi [threads]         threads of each process; default 1
 * BENCH lines: the median step; the sum alone, with all processes ready for it. MODEL lines, of one process: efficiency on
 * more machines, each with as many tokens as this one has, if the sum went at the bandwidth of a network:
 * step = compute + 2 (ranks - 1) / ranks * bytes / bandwidth. Nothing overlaps; latency is left out. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "../examples/parallel_mpi.h"

enum { STEPS = 9, WARM = 2, N_SEQUENCES = 16, LENGTH = 128, VOCAB = 2048 };

static int ascending(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return x < y ? -1 : x > y; }
static double median(double *seconds) {
    qsort(seconds, STEPS, sizeof *seconds, ascending);
    return seconds[STEPS / 2];
}
static tt_status step_of(tt_model *model, tt_reducer *reducer, tt_optimizer *adamw, const int32_t *tokens) {
    tt_context *ctx = tt_model_context(model);
    int n = N_SEQUENCES / parallel_size, i;
    int32_t offsets[N_SEQUENCES + 1];
    tt_batch_desc batch = TT_INIT;
    tt_tensor *loss;
    tt_status status;
    for (i = 0; i <= n; i++) { offsets[i] = (int32_t)(i * LENGTH); }
    batch.n_sequences = n;
    batch.offsets = offsets;
    batch.tokens = tokens + parallel_rank * n * LENGTH;
    loss = tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &batch), 1, NULL)));
    status = tt_backward(ctx, tt_scale(ctx, loss, 1.0f / (float)parallel_size));
    if (status == TT_OK) { status = tt_reducer_add(reducer); }
    if (status == TT_OK) { status = tt_reducer_sum(reducer); }
    if (status == TT_OK) { status = tt_optimizer_step(adamw, 1e-4f, NULL); }
    tt_step_reset(ctx);
    return status;
}
/* The sum of gradients that are there, begun by all processes at once. */
static tt_status sum_alone(tt_reducer *reducer, double *seconds) {
    double begin;
    tt_status status = tt_reducer_add(reducer);
    parallel_any(0);
    begin = tt_clock();
    if (status == TT_OK) { status = tt_reducer_sum(reducer); }
    *seconds = tt_clock() - begin;
    return status;
}
static void report(tt_context *ctx, tt_model *model, double step, double low, double high, double sum) {
    static const struct { const char *name; double bytes_per_s; } networks[] = {{"1GbE", 0.125e9}, {"25GbE", 3.1e9}, {"200Gb/s", 25e9}};
    double bytes = 4.0 * (double)tt_model_size(model), compute = step - sum;
    int ranks, k;
    printf("BENCH name=parallel_step ranks=%d threads=%d ms=%.2f spread=%.2f..%.2f tokens_per_s=%.0f sum_ms=%.2f sum_share=%.3f gradient_MB=%.2f kernel=%s\n", parallel_size,
           tt_threads(ctx), 1e3 * step, 1e3 * low, 1e3 * high, N_SEQUENCES * LENGTH / step, 1e3 * sum, sum / step, 1e-6 * bytes, tt_kernel(ctx));
    for (ranks = 8; parallel_size == 1 && ranks <= 512; ranks *= 8) {
        for (k = 0; k < 3; k++) {
            double network = 2.0 * (ranks - 1) / ranks * bytes / networks[k].bytes_per_s;
            printf("MODEL name=parallel_efficiency ranks=%d network=%s compute_ms=%.2f sum_ms=%.2f efficiency=%.2f\n", ranks, networks[k].name, 1e3 * compute, 1e3 * network, compute / (compute + network));
        }
    }
}
static tt_status bench(tt_context *ctx) {
    static int32_t tokens[N_SEQUENCES * LENGTH];
    double seconds[STEPS], sums[STEPS], ignored, sum;
    tt_model_config c = TT_INIT;
    tt_model *model;
    tt_optimizer *adamw;
    tt_reducer *reducer;
    tt_status status = TT_OK;
    int i;
    c.vocab_size = VOCAB;
    c.hidden_size = 256;
    c.num_hidden_layers = 4;
    c.num_attention_heads = 4;
    c.intermediate_size = 704;
    model = tt_model_create(ctx, &c, 1);
    adamw = model ? tt_adamw_create(model, NULL) : NULL;
    reducer = adamw ? parallel_reducer(ctx, model, 0) : NULL;
    for (i = 0; i < N_SEQUENCES * LENGTH; i++) { tokens[i] = (int32_t)(tt_random(1, 0, (uint64_t)i) % VOCAB); }
    if (!reducer) { status = tt_error_status(ctx); }
    for (i = -WARM; i < STEPS && status == TT_OK; i++) {
        double begin = tt_clock();
        status = step_of(model, reducer, adamw, tokens);
        if (i >= 0) { seconds[i] = tt_clock() - begin; }
    }
    for (i = -WARM; i < STEPS && status == TT_OK; i++) { status = sum_alone(reducer, i < 0 ? &ignored : &sums[i]); }
    if (status == TT_OK) {
        sum = median(sums);
        ignored = median(seconds);
        report(ctx, model, ignored, seconds[0], seconds[STEPS - 1], sum);
    }
    tt_reducer_destroy(reducer);
    tt_optimizer_destroy(adamw);
    tt_model_destroy(model);
    return status;
}
int main(int argc, char **argv) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_status status;
    parallel_begin(&argc, &argv);
    desc.n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (N_SEQUENCES % parallel_size) { fprintf(stderr, "bench_parallel: %d ranks do not share %d sequences evenly\n", parallel_size, N_SEQUENCES); return 1; }
    ctx = tt_create(&desc);
    status = ctx ? bench(ctx) : TT_ERR_MEM;
    if (status != TT_OK) { fprintf(stderr, "bench_parallel: %s\n", tt_error(ctx)); return 1; }
    tt_destroy(ctx);
    parallel_end();
    return 0;
}
