/* Training speed: tokens per second of forward, backward and AdamW step, for the demo's model and a larger one.
 *   build/bench_train [threads]     prints one BENCH line per model, the median of the timed steps */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

static int ascending(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return x < y ? -1 : x > y; }

static int bench(int n_threads, int hidden, int layers, int heads, int inner, int vocab, int n_sequences, int length, int steps) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = TT_INIT;
    tt_model *model;
    tt_optimizer *adamw;
    int32_t *tokens = (int32_t *)malloc((size_t)(n_sequences * length) * sizeof *tokens), *offsets = (int32_t *)malloc((size_t)(n_sequences + 1) * sizeof *offsets);
    double seconds[64];
    tt_status status = TT_OK;
    int i, step;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    c.vocab_size = vocab;
    c.hidden_size = hidden;
    c.num_hidden_layers = layers;
    c.num_attention_heads = heads;
    c.intermediate_size = inner;
    model = tt_model_create(ctx, &c, 1);
    adamw = model ? tt_adamw_create(model, NULL) : NULL;
    for (i = 0; i < n_sequences * length; i++) { tokens[i] = (int32_t)(tt_random(1, 0, (uint64_t)i) % (uint64_t)vocab); }
    for (i = 0; i <= n_sequences; i++) { offsets[i] = (int32_t)(i * length); }
    for (step = 0; adamw && status == TT_OK && step < steps + 2; step++) {       /* two steps to warm up */
        tt_batch_desc batch = TT_INIT;
        double begin = tt_clock();
        batch.n_sequences = n_sequences;
        batch.offsets = offsets;
        batch.tokens = tokens;
        tt_backward(ctx, tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &batch), 1, NULL))));
        status = tt_optimizer_step(adamw, 1e-4f, NULL);
        tt_step_reset(ctx);
        if (step >= 2) { seconds[step - 2] = tt_clock() - begin; }
    }
    if (!adamw || status != TT_OK) { fprintf(stderr, "bench_train: %s\n", tt_error(ctx)); return 1; }
    qsort(seconds, (size_t)steps, sizeof *seconds, ascending);
    printf("BENCH name=train_%.2fM threads=%d ours=%.0f unit=tokens/s spread=%.0f..%.0f gflops=%.1f kernel=%s rival=none\n", (double)tt_model_size(model) * 1e-6, tt_threads(ctx),
           n_sequences * length / seconds[steps / 2], n_sequences * length / seconds[steps - 1], n_sequences * length / seconds[0],
           6e-9 * (double)(tt_model_size(model) - (size_t)vocab * (size_t)hidden) * n_sequences * length / seconds[steps / 2], tt_kernel(ctx));
    tt_optimizer_destroy(adamw);
    tt_model_destroy(model);
    tt_destroy(ctx);
    free(tokens);
    free(offsets);
    return 0;
}

int main(int argc, char **argv) {
    int n_threads = argc > 1 ? atoi(argv[1]) : 0;
    return bench(n_threads, 96, 3, 3, 256, 240, 50, 40, 40) || bench(n_threads, 512, 8, 8, 1408, 4096, 8, 256, 5);
}
