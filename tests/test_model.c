/* Chapter 6: the transformer. Gradients of whole models by directional differences, packing, recomputation,
 * micro-batches, threads, names, adapters, and every failing allocation. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

typedef enum family { LLAMA, LLAMA_GQA_TIED, QWEN2, QWEN3, SMOLLM3, GPT2, N_FAMILIES } family;

static tt_model_config config_of(family f) {
    tt_model_config c = TT_INIT;
    c.vocab_size = 53;
    c.hidden_size = 24;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 3;
    c.intermediate_size = 40;
    c.max_position_embeddings = 64;
    c.bos_token_id = c.eos_token_id = -1;
    if (f == LLAMA_GQA_TIED) { c.num_attention_heads = 4; c.num_key_value_heads = 2; c.head_dim = 10; c.tie_word_embeddings = 1; c.mlp_bias = c.attention_bias = c.attention_out_bias = 1; }
    if (f == QWEN2) { snprintf(c.model_type, sizeof c.model_type, "qwen2"); c.attention_bias = 1; }
    if (f == QWEN3) { snprintf(c.model_type, sizeof c.model_type, "qwen3"); c.qk_norm = 1; c.num_key_value_heads = 1; }
    if (f == SMOLLM3) { snprintf(c.model_type, sizeof c.model_type, "smollm3"); c.no_rope_interval = 2; }
    if (f == GPT2) { c.gpt2 = 1; c.tie_word_embeddings = 1; }
    return c;
}
static const int32_t TOKENS[] = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 50};
static const int32_t OFFSETS[] = {0, 7, 8, 20};

static const tt_batch *batch_of(tt_context *ctx, int first, int n) {
    int32_t offsets[4];
    tt_batch_desc d = TT_INIT;
    int i;
    for (i = 0; i <= n; i++) offsets[i] = OFFSETS[first + i] - OFFSETS[first];
    d.n_sequences = n;
    d.offsets = offsets;
    d.tokens = TOKENS + OFFSETS[first];
    return tt_batch_create(ctx, &d);
}
/* Sum of the log-probs of all targets plus a tenth of the entropies, recorded. */
static tt_tensor *loss_of(tt_model *m, const tt_batch *batch) {
    tt_context *ctx = tt_model_context(m);
    tt_tensor *h, *l = tt_model_logprobs(m, batch, 0.8f, &h);
    return tt_sum(ctx, tt_add(ctx, l, tt_scale(ctx, h, 0.1f)));
}
static double loss_in_double(tt_model *m) {
    tt_context *ctx = tt_model_context(m);
    tt_tensor *h, *l;
    float logprobs[32], entropy[32];
    double sum = 0;
    size_t i;
    tt_no_grad_begin(ctx);
    l = tt_model_logprobs(m, batch_of(ctx, 0, 3), 0.8f, &h);
    tt_no_grad_end(ctx);
    if (!l) return NAN;
    tt_tensor_get(l, logprobs);
    tt_tensor_get(h, entropy);
    for (i = 0; i < l->size; i++) sum += (double)logprobs[i] + 0.1 * (double)entropy[i];
    tt_step_reset(ctx);
    return sum;
}
static float *grads_of(const tt_model *m) {
    float *all = (float *)malloc(tt_model_size(m) * sizeof *all);
    size_t at = 0;
    int i;
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor_get_grad(tt_model_param(m, i), all + at);
        at += tt_model_param(m, i)->size;
    }
    return all;
}

TT_TEST(gradients_of_every_family) {
    int f, i;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of((family)f);
        tt_model *m = tt_model_create(ctx, &c, 5);
        TT_CHECK(m != NULL);
        if (!m) { printf("  %s\n", tt_error(ctx)); tt_destroy(ctx); continue; }
        TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))));
        tt_step_reset(ctx);
        for (i = 0; i < tt_model_n_params(m); i++) {       /* along the sign of the gradient of each parameter */
            tt_tensor *p = tt_model_param(m, i);
            float *grad = (float *)malloc(p->size * sizeof *grad), *kept = (float *)malloc(p->size * sizeof *kept), *moved = (float *)malloc(p->size * sizeof *moved);
            double norm = 0, side[2], numeric, h;
            size_t k;
            int j;
            tt_tensor_get_grad(p, grad);
            tt_tensor_get(p, kept);
            for (k = 0; k < p->size; k++) norm += (double)grad[k] * (double)grad[k];
            norm = sqrt(norm);
            TT_CHECK(norm > 0);
            h = 4e-3 / (norm + 1e-3) < 2e-3 * sqrt((double)p->size) ? 4e-3 / (norm + 1e-3) : 2e-3 * sqrt((double)p->size);
            if (h < 2e-3) h = 2e-3;
            for (j = 0; j < 2; j++) {
                for (k = 0; k < p->size; k++) moved[k] = kept[k] + (float)((j ? h : -h) * (double)grad[k] / norm);
                tt_tensor_set(p, moved);
                side[j] = loss_in_double(m);
            }
            tt_tensor_set(p, kept);
            numeric = (side[1] - side[0]) / (2 * h);
            if (fabs(numeric - norm) > 2e-2 * norm + 2e-3) printf("  family %d, %s: slope %.6g, difference %.6g\n", f, p->name, norm, numeric);
            TT_CHECK(fabs(numeric - norm) <= 2e-2 * norm + 2e-3);
            free(grad);
            free(kept);
            free(moved);
        }
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* A packed batch gives each sequence the bits that it gets alone. */
TT_TEST(packing_changes_no_bit) {
    int f, s;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of((family)f);
        tt_model *m = tt_model_create(ctx, &c, 5);
        float packed[32 * 24], alone[32 * 24];
        tt_no_grad_begin(ctx);
        tt_tensor_get(tt_model_forward(m, batch_of(ctx, 0, 3)), packed);
        for (s = 0; s < 3; s++) {
            tt_tensor_get(tt_model_forward(m, batch_of(ctx, s, 1)), alone);
            TT_CHECK_ALIKE(alone, packed + OFFSETS[s] * 24, (size_t)(OFFSETS[s + 1] - OFFSETS[s]) * 24, tt_test_bits());
        }
        TT_CHECK_OK(ctx, tt_eval(ctx));
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* Five sequences of which the second and third go on from the first, the fifth from the fourth: each followed
 * by what it has alone. flat: as if each stood alone. Targets are the tokens behind the shared ones. */
static const tt_batch *tree_batch(tt_context *ctx, int flat) {
    static const int32_t offsets[6] = {0, 6, 9, 13, 15, 20}, parents[5] = {-1, 0, 0, -1, 3};
    static const int32_t flat_offsets[4] = {0, 9, 19, 26};
    static const int leaves[3] = {1, 2, 4};
    int32_t tokens[26];
    unsigned char mask[26] = {0};
    tt_batch_desc d = TT_INIT;
    int s, t, at = 0;
    for (t = 0; t < 20; t++) { mask[t] = t >= 6 && t != 13 && t != 14; }
    d.n_sequences = 5;
    d.offsets = offsets;
    d.parents = parents;
    d.tokens = TOKENS;
    d.mask = mask;
    if (!flat) { return tt_batch_create(ctx, &d); }
    for (s = 0; s < 3; s++) {
        int parent = parents[leaves[s]], k;
        for (k = 0; k < 2; k++) {
            int from = k ? leaves[s] : parent;
            for (t = offsets[from]; t < offsets[from + 1]; t++, at++) {
                tokens[at] = TOKENS[t];
                mask[at] = (unsigned char)(k && t > offsets[from]);
            }
        }
    }
    d.n_sequences = 3;
    d.offsets = flat_offsets;
    d.parents = NULL;
    d.tokens = tokens;
    return tt_batch_create(ctx, &d);
}

/* Log-probs [9] of the tree or of its branches one by one, and the gradients of their weighted sum. */
static float *tree_grads(family f, int flat, int n_threads, int recompute, float *logprobs) {
    static const int shape[1] = {9};
    static const float weights[9] = {1, -2, 0.5f, 3, 1, -1, 2, 0.25f, -0.75f};
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = config_of(f);
    tt_model *m;
    tt_tensor *l;
    float *grads;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    c.recompute = recompute;
    m = tt_model_create(ctx, &c, 5);
    l = tt_model_logprobs(m, tree_batch(ctx, flat), 0.8f, NULL);
    TT_CHECK_OK(ctx, tt_eval(ctx));
    TT_CHECK_INT(l ? (int)l->size : 0, 9);
    if (l) { tt_tensor_get(l, logprobs); }
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_mul(ctx, l, tt_constant(ctx, 1, shape, weights)))));
    grads = grads_of(m);
    tt_model_destroy(m);
    tt_destroy(ctx);
    return grads;
}

/* What responses share is computed once: their log-probs keep their bits, the gradient is the same sum. */
TT_TEST(a_shared_prompt_changes_no_log_prob) {
    int f, i;
    if (TT_TEST_DEVICE) { TT_SKIP("trees of sequences are trained on the CPU alone"); }
    for (f = 0; f < N_FAMILIES; f++) {
        float tree[9], flat[9], other[9], *a = tree_grads((family)f, 0, 1, 0, tree), *b = tree_grads((family)f, 1, 1, 0, flat);
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of((family)f);
        tt_model *m = tt_model_create(ctx, &c, 5);
        int n = (int)tt_model_size(m);
        double apart = 0, most = 0;
        for (i = 0; i < n; i++) {
            apart = fmax(apart, fabs((double)a[i] - (double)b[i]));
            most = fmax(most, fabs((double)b[i]));
        }
        TT_CHECK_BYTES(tree, flat, sizeof flat);
        TT_CHECK(most > 0.1);
        TT_CHECK_NEAR(apart / most, 0, 1e-6);
        tt_model_destroy(m);
        tt_destroy(ctx);
        free(b);
        b = tree_grads((family)f, 0, 2, 0, other);
        TT_CHECK_BYTES(tree, other, sizeof tree);
        TT_CHECK_BYTES(a, b, (size_t)n * sizeof *a);           /* 1 and 2 threads */
        free(b);
        b = tree_grads((family)f, 0, 1, 1, other);
        TT_CHECK_BYTES(a, b, (size_t)n * sizeof *a);           /* and with recomputation */
        free(a);
        free(b);
    }
}

TT_TEST(parents_are_earlier_sequences_without_a_cache) {
    static const int32_t offsets[3] = {0, 2, 4}, tokens[4] = {1, 2, 3, 4}, slots[2] = {0, 1};
    int32_t parents[2] = {-1, 1};
    tt_context *ctx = tt_create(NULL);
    tt_model_config c = config_of(LLAMA);
    tt_model *m = tt_model_create(ctx, &c, 5);
    tt_batch_desc d = TT_INIT;
    d.n_sequences = 2;
    d.offsets = offsets;
    d.tokens = tokens;
    d.parents = parents;
    TT_CHECK(tt_batch_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "parent is 1, expected 0");
    tt_step_reset(ctx);
    parents[1] = -2;
    TT_CHECK(tt_batch_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "parent is -2");
    tt_step_reset(ctx);
    parents[1] = 0;
    d.cache = tt_kv_cache_create(m, 2, 8);
    d.cache_slots = slots;
    TT_CHECK(tt_batch_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "parents with a cache");
    tt_step_reset(ctx);
    tt_kv_cache_destroy(d.cache);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

static float *run_grads(family f, int n_threads, int recompute, int micro_batches) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = config_of(f);
    tt_model *m;
    float *grads = NULL;
    int s;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    c.recompute = recompute;
    m = tt_model_create(ctx, &c, 5);
    if (micro_batches) {
        for (s = 0; s < 3; s += 2) {              /* sequences 0 and 1, then 2 */
            tt_backward(ctx, loss_of(m, batch_of(ctx, s, s == 0 ? 2 : 1)));
            TT_CHECK_OK(ctx, tt_eval(ctx));
            tt_step_reset(ctx);
        }
    } else {
        tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3)));
        TT_CHECK_OK(ctx, tt_eval(ctx));
    }
    if (m) grads = grads_of(m);
    tt_model_destroy(m);
    tt_destroy(ctx);
    return grads;
}
static void compare_grads(family f, float *a, float *b, int bits) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config c = config_of(f);
    tt_model *m = tt_model_create(ctx, &c, 5);
    size_t size = tt_model_size(m);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_ALIKE(a, b, size, bits);
    free(a);
    free(b);
}
TT_TEST(recomputation_changes_no_bit) {
    int f;
    for (f = 0; f < N_FAMILIES; f++) compare_grads((family)f, run_grads((family)f, 1, 0, 0), run_grads((family)f, 1, 1, 0), tt_test_bits());
}
/* Bytes of the step after a forward pass over 500 tokens. */
static double forward_megabytes(int n_layers, int with_gradients) {
    enum { TOKENS = 500 };
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = TT_INIT;
    tt_model *m;
    tt_batch_desc d = TT_INIT;
    int32_t tokens[TOKENS], offsets[2] = {0, TOKENS};
    double before, after;
    int i;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    c.vocab_size = 50;
    c.hidden_size = 64;
    c.num_attention_heads = 4;
    c.num_hidden_layers = n_layers;
    c.max_position_embeddings = TOKENS;
    m = tt_model_create(ctx, &c, 5);
    for (i = 0; i < TOKENS; i++) { tokens[i] = (int32_t)(i * 7 % 50); }
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = tokens;
    before = (double)tt_test_bytes_used(ctx);
    if (!with_gradients) { tt_no_grad_begin(ctx); }
    TT_CHECK(tt_model_forward(m, tt_batch_create(ctx, &d)) != NULL);
    if (!with_gradients) { tt_no_grad_end(ctx); }
    after = (double)tt_test_bytes_used(ctx);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
    return (after - before) / 1e6;
}
TT_TEST(without_gradients_one_layer_is_kept) {
    double two = forward_megabytes(2, 0), twelve = forward_megabytes(12, 0), all = forward_megabytes(12, 1);
    printf("  2 layers %.1f MB, 12 layers %.1f MB, with gradients %.1f MB\n", two, twelve, all);
    TT_CHECK(twelve < 1.5 * two);
    TT_CHECK(all > 4 * twelve);
}
TT_TEST(threads_change_no_bit) {
    int f;
    for (f = 0; f < N_FAMILIES; f++) compare_grads((family)f, run_grads((family)f, 1, 0, 0), run_grads((family)f, 2, 0, 0), tt_test_bits());
}
/* Exact where the head is not tied; tied, two sums meet in another order. */
TT_TEST(micro_batches_sum_to_the_batch) {
    compare_grads(LLAMA, run_grads(LLAMA, 1, 0, 0), run_grads(LLAMA, 1, 0, 1), !TT_TEST_DEVICE);      /* a device sums norms in chunks of rows */
    compare_grads(QWEN2, run_grads(QWEN2, 1, 0, 0), run_grads(QWEN2, 1, 0, 1), !TT_TEST_DEVICE);
    compare_grads(QWEN3, run_grads(QWEN3, 1, 0, 0), run_grads(QWEN3, 1, 0, 1), !TT_TEST_DEVICE);
}

TT_TEST(parameters_have_hugging_face_names) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config c = config_of(LLAMA);
    tt_model *m = tt_model_create(ctx, &c, 1), *same, *other, *copy;
    TT_CHECK_INT(tt_model_n_params(m), 1 + 2 * 9 + 1 + 1);
    TT_CHECK(tt_model_param_find(m, "model.layers.1.self_attn.q_proj.weight") != NULL);
    TT_CHECK(tt_model_param_find(m, "lm_head.weight") != NULL);
    TT_CHECK_INT(tt_model_param_find(m, "model.layers.0.mlp.down_proj.weight")->shape[1], 40);
    TT_CHECK(tt_model_param_find(m, "model.layers.2.mlp.down_proj.weight") == NULL);
    same = tt_model_create(ctx, &c, 1);
    other = tt_model_create(ctx, &c, 2);
    TT_CHECK_BYTES(TT_F(tt_model_param(m, 0)), TT_F(tt_model_param(same, 0)), 53 * 24 * sizeof(float));
    TT_CHECK(memcmp(TT_F(tt_model_param(m, 0)), TT_F(tt_model_param(other, 0)), 53 * 24 * sizeof(float)) != 0);
    copy = tt_model_copy(other);
    TT_CHECK_BYTES(TT_F(tt_model_param(copy, 3)), TT_F(tt_model_param(other, 3)), 24 * 24 * sizeof(float));
    TT_CHECK_INT(tt_model_param(copy, 3)->requires_grad, 0);
    tt_model_destroy(copy);
    tt_model_destroy(other);
    tt_model_destroy(same);
    tt_model_destroy(m);
    c = config_of(GPT2);
    m = tt_model_create(ctx, &c, 1);
    TT_CHECK(tt_model_param_find(m, "transformer.h.1.attn.c_attn.bias") != NULL);
    TT_CHECK_INT(tt_model_param_find(m, "transformer.h.0.mlp.c_fc.weight")->shape[0], 24);
    TT_CHECK(tt_model_param_find(m, "lm_head.weight") == NULL);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

TT_TEST(bad_configs_are_named) {
    static const struct { const char *word; int hidden, heads, kv, layers, vocab, positions; } bad[] = {
        {"vocab_size is 0", 24, 3, 0, 2, 0, 0},       {"hidden_size is -8", -8, 3, 0, 2, 10, 0},
        {"hidden_size is 25", 25, 3, 0, 2, 10, 0},    {"num_key_value_heads is 2", 24, 3, 2, 2, 10, 0},
        {"num_hidden_layers is 0", 24, 3, 0, 0, 10, 0}, {"num_attention_heads is 0", 24, 0, 0, 2, 10, 0},
        {"max_position_embeddings is -1", 24, 3, 0, 2, 10, -1},
    };
    tt_context *ctx = tt_create(NULL);
    size_t i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tt_model_config c = TT_INIT;
        c.hidden_size = bad[i].hidden;
        c.num_attention_heads = bad[i].heads;
        c.num_key_value_heads = bad[i].kv;
        c.num_hidden_layers = bad[i].layers;
        c.vocab_size = bad[i].vocab;
        c.max_position_embeddings = bad[i].positions;
        TT_CHECK(tt_model_create(ctx, &c, 0) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), bad[i].word);
    }
    {
        static const int32_t tokens[2] = {1, 53}, offsets[2] = {0, 2};
        tt_model_config c = config_of(LLAMA);
        tt_model *m = tt_model_create(ctx, &c, 0);
        tt_batch_desc d = TT_INIT;
        d.n_sequences = 1;
        d.offsets = offsets;
        d.tokens = tokens;
        TT_CHECK(tt_model_forward(m, tt_batch_create(ctx, &d)) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "53");
        tt_model_destroy(m);
    }
    tt_destroy(ctx);
}

TT_TEST(positions_beyond_the_table_are_an_error) {
    int f;
    for (f = 0; f < N_FAMILIES; f += GPT2) {
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of((family)f);
        tt_model *m;
        c.max_position_embeddings = 11;
        m = tt_model_create(ctx, &c, 0);
        TT_CHECK(tt_model_forward(m, batch_of(ctx, 0, 3)) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "max_position_embeddings");
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* No product of sizes may overflow, and no number that is not finite gets into the angles. */
TT_TEST(configs_of_absurd_sizes_are_refused) {
    static const int heads[] = {2147483647, 2097152, 131072};
    tt_context *ctx = tt_create(NULL);
    tt_model_config c;
    int i, f;
    for (i = 0; i < 3 * 2; i++) {
        memset(&c, 0, sizeof c);
        c.gpt2 = i >= 3;
        c.vocab_size = 16;
        c.hidden_size = 32;
        c.num_hidden_layers = 1;
        c.num_attention_heads = heads[i % 3];
        c.head_dim = 1024;
        TT_CHECK(tt_model_create(ctx, &c, 1) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "num_attention_heads");
    }
    for (i = 0; i < 5; i++) {
        c = config_of(LLAMA);
        c.rope_scaling.factor = i == 0 ? NAN : i == 1 ? INFINITY : i == 2 ? -1.0f : 8.0f;
        c.rope_scaling.low_freq_factor = i == 3 ? NAN : 1;
        c.rope_scaling.high_freq_factor = 4;
        c.rope_scaling.original_max_position_embeddings = i == 4 ? 0 : 16;
        TT_CHECK(tt_model_create(ctx, &c, 1) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "rope_scaling");
    }
    for (i = 0; i < 2; i++) {
        c = config_of(LLAMA);
        if (i) { c.rope_theta = INFINITY; } else { c.norm_eps = INFINITY; }
        TT_CHECK(tt_model_create(ctx, &c, 1) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "inf");
    }
    c = config_of(LLAMA);
    c.intermediate_size = 2147483647;
    TT_CHECK(tt_model_create(ctx, &c, 1) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "intermediate_size is 2147483647");
    for (f = 0; f < N_FAMILIES; f++) {                         /* and the config itself is not touched by a refusal */
        tt_model *m;
        c = config_of((family)f);
        m = tt_model_create(ctx, &c, 1);
        TT_CHECK(m != NULL);
        tt_model_destroy(m);
    }
    tt_destroy(ctx);
}

/* ---- the tables of angles: as long as the positions in use, and always with the same numbers ---- */
static float *logprobs_of_length(tt_model *m, int n) {
    tt_context *ctx = tt_model_context(m);
    float *out = (float *)malloc((size_t)n * sizeof *out);
    int32_t *tokens = (int32_t *)malloc((size_t)n * sizeof *tokens), ends[2] = {0, 0};
    tt_batch_desc d = TT_INIT;
    tt_tensor *l;
    int i;
    for (i = 0; i < n; i++) { tokens[i] = TOKENS[i % 20]; }
    ends[1] = n;
    d.n_sequences = 1;
    d.offsets = ends;
    d.tokens = tokens;
    tt_no_grad_begin(ctx);
    l = tt_model_logprobs(m, tt_batch_create(ctx, &d), 1, NULL);
    tt_no_grad_end(ctx);
    TT_CHECK(l && tt_tensor_get(l, out) == TT_OK);
    tt_step_reset(ctx);
    free(tokens);
    return out;
}
TT_TEST(a_context_of_millions_costs_what_is_used) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = config_of(LLAMA);
    tt_model *small, *large;
    tt_kv_cache *cache;
    size_t used;
    int n;
    desc.allocator = tt_test_allocator(&memory);
    desc.n_threads = 1;
    ctx = tt_create(&desc);
    c.max_position_embeddings = 400;
    small = tt_model_create(ctx, &c, 3);
    c.max_position_embeddings = 2147483647;
    used = tt_memory_get(ctx).current_bytes;
    large = tt_model_create(ctx, &c, 3);
    TT_REQUIRE(small != NULL && large != NULL);
    TT_CHECK(tt_memory_get(ctx).peak_bytes - used < 4 * tt_model_size(large) + 65536);
    TT_CHECK(large->cos_table == NULL);
    free(logprobs_of_length(small, 400));                       /* the whole table at once */
    TT_CHECK_INT(small->cos_table->shape[0], 400);
    for (n = 40; n <= 400; n += 90) {                           /* and piece by piece */
        float *a = logprobs_of_length(small, n), *b = logprobs_of_length(large, n);
        TT_CHECK_BYTES(a, b, (size_t)(n - 1) * sizeof *a);
        TT_CHECK(large->cos_table->shape[0] >= n && large->cos_table->shape[0] < 2 * n + 64);
        free(a);
        free(b);
    }
    cache = tt_kv_cache_create(large, 1, 600);
    TT_REQUIRE(cache != NULL);
    TT_CHECK_INT(large->cos_table->shape[0], 1024);
    tt_kv_cache_destroy(cache);
    cache = tt_kv_cache_create(small, 1, 600);                  /* longer than the model's own context */
    TT_REQUIRE(cache != NULL);
    TT_CHECK_INT(small->cos_table->shape[0], 400);
    tt_kv_cache_destroy(cache);
    tt_model_destroy(small);
    tt_model_destroy(large);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* A graph that was recorded with short tables is walked back with long ones. */
TT_TEST(tables_that_grow_within_a_step_change_no_bit) {
    float *grads[2];
    size_t size = 0;
    int grown, n, failed = 0;
    for (grown = 0; grown < 2; grown++) {
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of(QWEN3);
        tt_model *m;
        tt_tensor *loss;
        c.max_position_embeddings = 4096;
        m = tt_model_create(ctx, &c, 5);
        TT_REQUIRE(m != NULL);
        size = tt_model_size(m);
        loss = loss_of(m, batch_of(ctx, 0, 3));
        TT_CHECK_INT(m->cos_table->shape[0], 64);
        if (grown) {
            TT_CHECK_OK(ctx, tti_rope_reserve(m, 1000));
            TT_CHECK_INT(m->cos_table->shape[0], 1024);
        }
        TT_CHECK_OK(ctx, tt_backward(ctx, loss));
        grads[grown] = grads_of(m);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
    TT_CHECK_BYTES(grads[0], grads[1], size * sizeof(float));
    free(grads[0]);
    free(grads[1]);
    for (n = 1; n < 20; n++) {                                  /* memory that is out while they grow leaves the short ones */
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_model_config c = config_of(LLAMA);
        tt_model *m;
        tt_status status;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        c.max_position_embeddings = 4096;
        m = tt_model_create(ctx, &c, 5);
        TT_CHECK_OK(ctx, tti_rope_reserve(m, 5));
        memory.fail_at = memory.calls + n;
        status = tti_rope_reserve(m, 100);
        memory.fail_at = 0;
        TT_CHECK(status == TT_OK || status == TT_ERR_MEM);
        TT_CHECK_INT(m->cos_table->shape[0], status == TT_OK ? 128 : 64);
        TT_CHECK_INT(m->sin_table->shape[0], status == TT_OK ? 128 : 64);
        failed += status != TT_OK;
        tt_model_destroy(m);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(failed > 4 && failed < 19);
}

/* Everything a context has made may be destroyed in any order; the context comes last. */
TT_TEST(destroy_in_any_order) {
    static const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    int k, i, recorded;
    for (k = 0; k < 12; k++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_model_config c = config_of((k & 1) ? GPT2 : LLAMA);
        tt_model *m;
        tt_optimizer *o;
        tt_kv_cache *cache;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        m = tt_model_create(ctx, &c, 5);
        TT_REQUIRE(m != NULL);
        o = tt_adamw_create(m, NULL);
        cache = tt_kv_cache_create(m, 2, 32);
        recorded = k >= 6;
        TT_CHECK(loss_of(m, batch_of(ctx, 0, 3)) != NULL);      /* a graph that is never walked */
        if (!recorded) { tt_step_reset(ctx); }
        for (i = 0; i < 3; i++) {
            if (order[k % 6][i] == 0) { tt_model_destroy(m); }
            if (order[k % 6][i] == 1) { tt_optimizer_destroy(o); }
            if (order[k % 6][i] == 2) { tt_kv_cache_destroy(cache); }
        }
        if (recorded) { tt_step_reset(ctx); }
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}

TT_TEST(every_failing_allocation_is_an_error) {
    long n;
    int done = 0;
    for (n = 1; !done && n < 5000; n++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        memory.fail_at = n;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        if (ctx) {
            tt_model_config c = config_of(QWEN3);
            tt_model *m = tt_model_create(ctx, &c, 0);
            tt_status status = m ? tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))) : tt_error_status(ctx);
            done = status == TT_OK && memory.calls < n;
            TT_CHECK(done || status == TT_ERR_MEM);
            tt_model_destroy(m);
            tt_destroy(ctx);
        }
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(done && n > 20);
}

/* A weight of half precision, widened block by block, gives the bits of its float32 copy: product, bias and dx. */
TT_TEST(half_weights_change_no_bit) {
    enum { N = 3, ROWS = 700, COLS = 511 };                    /* more than one block of TTI_WIDEN */
    static const tt_dtype types[2] = {TT_BF16, TT_F16};
    int which, k;
    TT_CHECK((size_t)ROWS * COLS > TTI_WIDEN);
    for (which = 0; which < 4; which++) {                      /* linear and matmul, bf16 and f16 */
        tt_context *ctx = tt_create(NULL);
        int linear = which < 2, in = linear ? COLS : ROWS, out = linear ? ROWS : COLS, shape[2] = {ROWS, COLS}, x_shape[2] = {N, in}, d;
        float *values = (float *)malloc((size_t)ROWS * COLS * sizeof *values), *y[2], *dx[2];
        tt_tensor *w[2], *bias = tt_tensor_create(ctx, TT_F32, 1, &out, "bias"), *x, *product;
        w[0] = tt_tensor_create(ctx, types[which % 2], 2, shape, "half");
        w[1] = tt_tensor_create(ctx, TT_F32, 2, shape, "wide");
        TT_REQUIRE(values != NULL && w[0] != NULL && w[1] != NULL && bias != NULL);
        for (k = 0; k < ROWS * COLS; k++) values[k] = (float)(tt_random(1, 2, (uint64_t)k) >> 40) / (float)(1 << 24) - 0.5f;
        TT_CHECK_OK(ctx, tt_tensor_set(w[1], values));
        TT_CHECK_OK(ctx, ctx->backend->cast(ctx, w[0]->data, types[which % 2], w[1]->data, TT_F32, w[1]->size));
        TT_CHECK_OK(ctx, tt_tensor_get(w[0], values));         /* widened: what the copy holds from here on */
        TT_CHECK_OK(ctx, tt_tensor_set(w[1], values));
        TT_CHECK_OK(ctx, tt_tensor_set(bias, values + 7));
        for (d = 0; d < 2; d++) {
            x = tt_constant(ctx, 2, x_shape, values + 1000);
            x->requires_grad = 1;
            product = linear ? tt_linear(ctx, x, w[d], bias) : tt_matmul(ctx, x, w[d], bias);
            TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_mul(ctx, product, product))));
            y[d] = (float *)malloc((size_t)N * (size_t)out * sizeof(float));
            dx[d] = (float *)malloc((size_t)N * (size_t)in * sizeof(float));
            tt_tensor_get(product, y[d]);
            tt_tensor_get_grad(x, dx[d]);
            tt_step_reset(ctx);
        }
        TT_CHECK_ALIKE(y[0], y[1], (size_t)N * (size_t)out, tt_test_bits());      /* half weights go in blocks of their rows */
        TT_CHECK_ALIKE(dx[0], dx[1], (size_t)N * (size_t)in, tt_test_bits());
        for (d = 0; d < 2; d++) { free(y[d]); free(dx[d]); tt_tensor_destroy(w[d]); }
        tt_tensor_destroy(bias);
        free(values);
        tt_destroy(ctx);
    }
}

/* ---- adapters ---- */
/* A model with adapters on every matrix, B random so that both halves matter. */
static tt_model *adapted_model(tt_context *ctx, family f, int recompute) {
    tt_model_config c = config_of(f);
    tt_lora_desc d = TT_INIT;
    tt_model *m;
    int i;
    c.recompute = recompute;
    m = tt_model_create(ctx, &c, 5);
    d.rank = 3;
    d.alpha = 5;
    if (!m || tt_model_lora_add(m, &d) != TT_OK) { tt_model_destroy(m); return NULL; }
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *p = tt_model_param(m, i);
        float values[2048];
        size_t k;
        if (!p->requires_grad) continue;
        for (k = 0; k < p->size; k++) values[k] = (float)((double)(tt_random(3, (uint64_t)i, k) >> 40) / (double)(1 << 24) - 0.5);
        tt_tensor_set(p, values);
    }
    return m;
}
TT_TEST(lora_gradients_of_every_family) {
    int f, i;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = adapted_model(ctx, (family)f, 0);
        int halves = 0;
        TT_REQUIRE(m != NULL);
        TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))));
        tt_step_reset(ctx);
        for (i = 0; i < tt_model_n_params(m); i++) {
            tt_tensor *p = tt_model_param(m, i);
            float grad[2048], kept[2048], moved[2048];
            double norm = 0, side[2], numeric, h = 2e-3;
            size_t k;
            int j;
            if (!p->requires_grad) {                       /* the base: frozen, and no memory for a gradient */
                TT_CHECK(p->grad == NULL && strstr(p->name, "lora") == NULL);
                continue;
            }
            halves++;
            TT_CHECK(strstr(p->name, ".lora_A.weight") || strstr(p->name, ".lora_B.weight"));
            tt_tensor_get_grad(p, grad);
            tt_tensor_get(p, kept);
            for (k = 0; k < p->size; k++) norm += (double)grad[k] * (double)grad[k];
            norm = sqrt(norm);
            TT_CHECK(norm > 0);
            for (j = 0; j < 2; j++) {
                for (k = 0; k < p->size; k++) moved[k] = kept[k] + (float)((j ? h : -h) * (double)grad[k] / norm);
                tt_tensor_set(p, moved);
                side[j] = loss_in_double(m);
            }
            tt_tensor_set(p, kept);
            numeric = (side[1] - side[0]) / (2 * h);
            if (fabs(numeric - norm) > 2e-2 * norm + 2e-3) printf("  family %d, %s: slope %.6g, difference %.6g\n", f, p->name, norm, numeric);
            TT_CHECK(fabs(numeric - norm) <= 2e-2 * norm + 2e-3);
        }
        TT_CHECK_INT(halves, f == GPT2 ? 2 * 4 * 2 : 2 * 7 * 2);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}
static float *hidden_of(tt_model *m, float out[20 * 24]) {
    tt_context *ctx = tt_model_context(m);
    tt_no_grad_begin(ctx);
    memset(out, 0, 20 * 24 * sizeof *out);
    TT_CHECK_OK(ctx, tt_tensor_get(tt_model_forward(m, batch_of(ctx, 0, 3)), out));
    tt_no_grad_end(ctx);
    tt_step_reset(ctx);
    return out;
}
/* New adapters change nothing; off, they are not there; a copy has them; recomputation and packing change no bit. */
TT_TEST(lora_bits) {
    int f;
    if (!tt_test_bits()) { TT_SKIP("the kernels promise no bits"); }
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model_config c = config_of((family)f);
        tt_model *base = tt_model_create(ctx, &c, 5), *fresh = tt_model_create(ctx, &c, 5), *m = adapted_model(ctx, (family)f, 0);
        tt_model *again = adapted_model(ctx, (family)f, 1), *copy;
        float want[20 * 24], got[20 * 24], alone[20 * 24];
        int i, s;
        TT_REQUIRE(base != NULL && fresh != NULL && m != NULL && again != NULL);
        hidden_of(base, want);
        TT_CHECK_OK(ctx, tt_model_lora_add(fresh, NULL));
        TT_CHECK_INT(tt_model_lora_get(fresh)->rank, 8);
        TT_CHECK_NEAR(tt_model_lora_get(fresh)->alpha, 16, 0);
        hidden_of(fresh, got);
        for (i = 0; i < 20 * 24; i++) TT_CHECK(got[i] == want[i]);                     /* B = 0; a zero may have changed its sign */
        hidden_of(m, got);
        TT_CHECK(memcmp(got, want, sizeof got) != 0);
        TT_CHECK_INT(tt_model_lora_enable(m, 0), 1);
        TT_CHECK_BYTES(hidden_of(m, alone), want, sizeof want);
        TT_CHECK_INT(tt_model_lora_enable(m, 1), 0);
        TT_CHECK_BYTES(hidden_of(m, alone), got, sizeof got);
        copy = tt_model_copy(m);
        TT_REQUIRE(copy != NULL);
        TT_CHECK_BYTES(hidden_of(copy, alone), got, sizeof got);
        TT_CHECK_INT(tt_model_param(copy, tt_model_n_params(copy) - 1)->requires_grad, 0);
        tt_no_grad_begin(ctx);
        for (s = 0; s < 3; s++) {
            tt_tensor_get(tt_model_forward(m, batch_of(ctx, s, 1)), alone);
            TT_CHECK_BYTES(alone, got + OFFSETS[s] * 24, (size_t)(OFFSETS[s + 1] - OFFSETS[s]) * 24 * sizeof(float));
        }
        tt_no_grad_end(ctx);
        tt_step_reset(ctx);
        TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))));
        tt_step_reset(ctx);
        TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(again, batch_of(ctx, 0, 3))));       /* recomputing over a frozen embedding */
        tt_step_reset(ctx);
        for (i = 0; i < tt_model_n_params(m); i++) {
            float a[2048], b[2048];
            tt_tensor *p = tt_model_param(m, i);
            if (!p->requires_grad) continue;
            tt_tensor_get_grad(p, a);
            tt_tensor_get_grad(tt_model_param(again, i), b);
            TT_CHECK_BYTES(a, b, p->size * sizeof(float));
        }
        tt_model_destroy(copy);
        tt_model_destroy(again);
        tt_model_destroy(m);
        tt_model_destroy(fresh);
        tt_model_destroy(base);
        tt_destroy(ctx);
    }
}
TT_TEST(lora_merge_is_the_same_function) {
    int f, i;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = adapted_model(ctx, (family)f, 0);
        float want[20 * 24], got[20 * 24], largest = 0, difference = 0, allowed;
        int n;
        TT_REQUIRE(m != NULL);
        hidden_of(m, want);
        TT_CHECK_OK(ctx, tt_model_lora_merge(m));
        TT_CHECK(tt_model_lora_get(m) == NULL);
        n = tt_model_n_params(m);
        TT_CHECK(strstr(tt_model_param(m, n - 1)->name, "lora") == NULL);
        TT_CHECK_INT(tt_model_param(m, 0)->requires_grad, 1);
        hidden_of(m, got);
        for (i = 0; i < 20 * 24; i++) {
            if (fabsf(want[i]) > largest) largest = fabsf(want[i]);
            if (fabsf(want[i] - got[i]) > difference) difference = fabsf(want[i] - got[i]);
        }
        allowed = (tt_test_bits() ? 2e-5f : 1e-3f) * largest;      /* cuBLASLt's GELU, which a merged layer may get, is off by 5e-4 */
        if (!(difference <= allowed)) printf("  family %d: %g of %g\n", f, (double)difference, (double)largest);
        TT_CHECK(difference <= allowed);
        TT_CHECK(tt_model_lora_merge(m) != TT_OK);
        TT_CHECK_CONTAINS(tt_error(ctx), "no adapters");
        TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))));
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}
/* AdamW has moments for the adapters only, and changes nothing else. */
TT_TEST(lora_trains_the_adapters_alone) {
    tt_context *ctx = tt_create(NULL);
    tt_model_config c = config_of(LLAMA);
    static const char *const targets[] = {"q_proj", "model.layers.1.mlp.down_proj"};
    tt_model *m = tt_model_create(ctx, &c, 5), *before;
    tt_lora_desc d = TT_INIT;
    tt_optimizer *adamw;
    size_t used;
    int i, step, n;
    TT_REQUIRE(m != NULL);
    n = tt_model_n_params(m);
    TT_CHECK_OK(ctx, tt_backward(ctx, loss_of(m, batch_of(ctx, 0, 3))));      /* leaves gradients that adding must free */
    tt_step_reset(ctx);
    d.rank = 2;
    d.target_modules = targets;
    d.n_target_modules = 2;
    TT_CHECK_OK(ctx, tt_model_lora_add(m, &d));
    TT_CHECK_INT(tt_model_n_params(m), n + 2 * 3);
    TT_CHECK(tt_model_param_find(m, "model.layers.0.mlp.down_proj.lora_A.weight") == NULL);
    TT_CHECK_INT(tt_model_param_find(m, "model.layers.1.mlp.down_proj.lora_A.weight")->shape[1], 40);
    TT_CHECK_INT(tt_model_param_find(m, "model.layers.1.mlp.down_proj.lora_B.weight")->shape[0], 24);
    before = tt_model_copy(m);
    used = tt_memory_get(ctx).current_bytes;
    adamw = tt_adamw_create(m, NULL);
    TT_REQUIRE(before != NULL && adamw != NULL);
    TT_CHECK(tt_memory_get(ctx).current_bytes - used < 2 * 4 * 2 * (2 * 48 + 64) + 4096);
    for (step = 0; step < 2; step++) {
        TT_CHECK_OK(ctx, tt_backward(ctx, tt_neg(ctx, loss_of(m, batch_of(ctx, 0, 3)))));
        TT_CHECK_OK(ctx, tt_optimizer_step(adamw, 1e-2f, NULL));
        tt_step_reset(ctx);
    }
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *p = tt_model_param(m, i);
        int same = tt_test_same(p, tt_model_param(before, i));
        TT_CHECK_INT(same, i < n);
        TT_CHECK(i >= n || p->grad == NULL);
    }
    tt_optimizer_destroy(adamw);
    TT_CHECK(tt_adamw_create(before, NULL) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "requires a gradient");
    tt_model_destroy(before);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
TT_TEST(lora_bad_descriptions_are_named) {
    static const struct { int rank; float alpha; const char *target, *word; } bad[] = {
        {-1, 0, "q_proj", "rank is -1"}, {1000, 0, "q_proj", "rank is 1000, expected at most"}, {1 << 20, 0, "q_proj", "rank is 1048576"}, {2, -1, "q_proj", "alpha is -1"}, {2, HUGE_VALF, "q_proj", "alpha"},
        {2, 0, "proj", "\"proj\""},      {2, 0, "lm_head", "lm_head"},              {2, 0, "", "target_modules[0]"}, {2, 0, "layers.7.self_attn.q_proj", "layers.7"},
    };
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = config_of(QWEN2);
    tt_model *m;
    size_t i;
    int n;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    m = tt_model_create(ctx, &c, 5);
    TT_REQUIRE(m != NULL);
    n = tt_model_n_params(m);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tt_lora_desc d = TT_INIT;
        d.rank = bad[i].rank;
        d.alpha = bad[i].alpha;
        d.target_modules = &bad[i].target;
        d.n_target_modules = 1;
        TT_CHECK_INT(tt_model_lora_add(m, &d), TT_ERR_ARG);
        TT_CHECK_CONTAINS(tt_error(ctx), bad[i].word);
        TT_CHECK_INT(tt_model_n_params(m), n);
        TT_CHECK(tt_model_param(m, 0)->requires_grad && !tt_model_lora_get(m));
    }
    TT_CHECK_INT(tt_model_lora_enable(m, 1), 0);
    TT_CHECK_OK(ctx, tt_model_lora_add(m, NULL));
    TT_CHECK_INT(tt_model_lora_add(m, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "has adapters");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(lora_survives_lost_memory) {
    static const char *const targets[] = {"k_proj", "mlp.up_proj"};
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model_config c = config_of(LLAMA);
    tt_lora_desc d = TT_INIT;
    tt_model *m;
    long n, blocks;
    int params;
    desc.allocator = tt_test_allocator(&memory);
    desc.n_threads = 1;
    ctx = tt_create(&desc);
    m = tt_model_create(ctx, &c, 5);
    TT_REQUIRE(m != NULL);
    params = tt_model_n_params(m);
    blocks = memory.live_blocks;
    d.target_modules = targets;
    d.n_target_modules = 2;
    for (n = 1; n < 300; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_lora_add(m, &d);
        memory.fail_at = 0;
        if (status == TT_OK) break;
        TT_CHECK_INT(status, TT_ERR_MEM);
        TT_CHECK_INT(memory.live_blocks, blocks);                  /* all or nothing */
        TT_CHECK_INT(tt_model_n_params(m), params);
        TT_CHECK(tt_model_lora_get(m) == NULL && tt_model_param(m, 0)->requires_grad);
        tt_error_clear(ctx);
    }
    TT_CHECK(n > 20 && n < 300);
    for (n = 1; n < 50; n++) {
        tt_status status;
        memory.fail_at = memory.calls + n;
        status = tt_model_lora_merge(m);
        memory.fail_at = 0;
        if (status == TT_OK) break;
        TT_CHECK_INT(status, TT_ERR_MEM);
        TT_CHECK(tt_model_lora_get(m) != NULL);
    }
    TT_CHECK(n > 1 - TT_TEST_DEVICE && n < 50);        /* on a device all memory of a merge is its own */
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_MAIN(gradients_of_every_family, packing_changes_no_bit, a_shared_prompt_changes_no_log_prob,
        parents_are_earlier_sequences_without_a_cache, recomputation_changes_no_bit, without_gradients_one_layer_is_kept, threads_change_no_bit,
        micro_batches_sum_to_the_batch, parameters_have_hugging_face_names, bad_configs_are_named,
        positions_beyond_the_table_are_an_error, configs_of_absurd_sizes_are_refused,
        a_context_of_millions_costs_what_is_used, tables_that_grow_within_a_step_change_no_bit, destroy_in_any_order, half_weights_change_no_bit, lora_gradients_of_every_family, lora_bits, lora_merge_is_the_same_function,
        lora_trains_the_adapters_alone, lora_bad_descriptions_are_named, lora_survives_lost_memory, every_failing_allocation_is_an_error)
