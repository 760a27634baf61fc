/* Sampling speed: tokens per second of tt_generate for the demo's model with 128 sequences at once, and of a larger
 * model with 1 and 64.
 *   build/bench_generate [threads]     prints one BENCH line each, the median of five runs */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

static int ascending(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return x < y ? -1 : x > y; }

static int bench(int n_threads, int hidden, int layers, int heads, int inner, int vocab, int n_prompts, int n_samples, int new_tokens) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = TT_INIT;
    tt_model *model;
    tt_request requests[64];
    tt_sampling s = TT_INIT;
    int32_t prompt[12];
    double seconds[5];
    int i, k;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    c.vocab_size = vocab;
    c.hidden_size = hidden;
    c.num_hidden_layers = layers;
    c.num_attention_heads = heads;
    c.intermediate_size = inner;
    model = tt_model_create(ctx, &c, 1);
    for (i = 0; i < 12; i++) { prompt[i] = (int32_t)(tt_random(1, 0, (uint64_t)i) % (uint64_t)vocab); }
    memset(requests, 0, sizeof requests);
    for (i = 0; i < n_prompts; i++) {
        requests[i].prompt = prompt;
        requests[i].prompt_length = 12;
        requests[i].n = n_samples;
        requests[i].id = (uint64_t)i;
    }
    s.max_new_tokens = new_tokens;
    s.max_batch = n_prompts * n_samples;
    for (k = 0; model && k < 5; k++) {
        tt_completions out;
        double begin = tt_clock();
        if (tt_generate(model, requests, n_prompts, &s, &out) != TT_OK) { break; }
        seconds[k] = tt_clock() - begin;
        tt_completions_free(&out);
        tt_step_reset(ctx);
    }
    if (k < 5) { fprintf(stderr, "bench_generate: %s\n", tt_error(ctx)); return 1; }
    qsort(seconds, 5, sizeof *seconds, ascending);
    printf("BENCH name=generate_%.2fM_x%d threads=%d ours=%.0f unit=tokens/s spread=%.0f..%.0f kernel=%s rival=none\n", (double)tt_model_size(model) * 1e-6, n_prompts * n_samples,
           tt_threads(ctx), n_prompts * n_samples * new_tokens / seconds[2], n_prompts * n_samples * new_tokens / seconds[4],
           n_prompts * n_samples * new_tokens / seconds[0], tt_kernel(ctx));
    tt_model_destroy(model);
    tt_destroy(ctx);
    return 0;
}

int main(int argc, char **argv) {
    int n_threads = argc > 1 ? atoi(argv[1]) : 0;
    return bench(n_threads, 96, 3, 3, 256, 240, 16, 8, 100) || bench(n_threads, 512, 8, 8, 1408, 4096, 1, 1, 100) || bench(n_threads, 512, 8, 8, 1408, 4096, 8, 8, 100);
}
