/* Parity with Hugging Face's transformers and peft: tiny random models that they made (golden/make_hf_golden.py) give
 * here the logits, token log-probs, gradients and greedy texts that they give there.
 *
 * Measure of a tensor: largest difference over the largest expected value. Bound: TOLERANCE below; both sides compute
 * in single precision and sum in different orders.
 *
 * The models are those in tests/golden/hf, or in $TT_PARITY_DIR. What is saved here stays in build/parity/saved, one
 * directory FAMILY-WHAT each with our logits, for make_hf_golden.py --verify (make parity). */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

#define TOLERANCE 3e-5      /* promised: 1e-4 */

static const char *const families[] = {"gpt2", "llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2", "smollm3"};
static const char *const adapted[] = {"gpt2", "llama3", "qwen3"};
#define N_FAMILIES ((int)(sizeof families / sizeof families[0]))
#define N_ADAPTED ((int)(sizeof adapted / sizeof adapted[0]))

/* ---- the expected values of one directory ---- */
enum { MAX_SEQUENCES = 8, MAX_TOKENS = 64 };
typedef struct golden {
    tt_context *ctx;
    tt_safetensors *values;
    int n, offsets[MAX_SEQUENCES + 1], n_stops;
    int32_t tokens[MAX_TOKENS], stops[8], greedy[MAX_SEQUENCES][MAX_TOKENS];
    int greedy_length[MAX_SEQUENCES];
} golden;

static const char *path_of(const char *family, const char *rest) {
    char *out = tt_test_buffer();
    const char *root = getenv("TT_PARITY_DIR");
    snprintf(out, 1024, "%s/%s%s", root ? root : "tests/golden/hf", family, rest);
    return out;
}
static int read_ids(const tt_json *list, int32_t *out, int room) {
    const tt_json *id;
    int n = 0;
    for (id = list ? list->child : NULL; id && n < room; id = id->next) out[n++] = (int32_t)id->number;
    return n;
}
/* rest: "" for the model, "/lora" for its adapter. */
static int golden_open(golden *g, tt_context *ctx, const char *family, const char *rest) {
    tt_text text = TT_INIT;
    tt_json *root;
    const tt_json *list;
    char path[64];
    memset(g, 0, sizeof *g);
    g->ctx = text.ctx = ctx;
    snprintf(path, sizeof path, "%s/expected.safetensors", rest);
    g->values = tt_safetensors_open(ctx, path_of(family, path));
    if (!g->values || tt_file_read(ctx, path_of(family, "/expected.json"), &text) != TT_OK) { printf("  %s\n", tt_error(ctx)); tt_text_free(&text); return 0; }
    root = tt_json_parse(ctx, text.data, text.size);
    for (list = root ? tt_json_get(root, "sequences")->child : NULL; list; list = list->next, g->n++)
        g->offsets[g->n + 1] = g->offsets[g->n] + read_ids(list, g->tokens + g->offsets[g->n], MAX_TOKENS - g->offsets[g->n]);
    for (list = root ? tt_json_get(root, "greedy")->child : NULL; list && g->greedy_length[MAX_SEQUENCES - 1] == 0; list = list->next) {
        int s = 0;
        while (g->greedy_length[s]) s++;
        g->greedy_length[s] = read_ids(list, g->greedy[s], MAX_TOKENS);
    }
    g->n_stops = read_ids(tt_json_get(root, "stop"), g->stops, 8);
    tt_json_free(ctx, root);
    tt_text_free(&text);
    return g->n > 0;
}
static void golden_close(golden *g) { tt_safetensors_close(g->values); }
/* Largest difference over largest expected value; 1e9 if the tensor is not there or has another size. */
static double worst(const golden *g, const char *name, const float *got, size_t n) {
    int k = tt_safetensors_find(g->values, name);
    float *want;
    double difference = 0, largest = 0;
    size_t i;
    if (k < 0 || tt_safetensors_info_get(g->values, k).size != n) { printf("  %s: not in the golden file with %lu values\n", name, (unsigned long)n); return 1e9; }
    want = (float *)malloc(n * sizeof *want);
    if (!want || tt_safetensors_read(g->values, k, want) != TT_OK) { free(want); return 1e9; }
    for (i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - (double)want[i]) <= difference)) difference = fabs((double)got[i] - (double)want[i]);
        if (fabs((double)want[i]) > largest) largest = fabs((double)want[i]);
    }
    free(want);
    return largest > 0 ? difference / largest : 1e9;
}
static int check_worst(const golden *g, const char *family, const char *name, const float *got, size_t n, double *most) {
    double w = worst(g, name, got, n);
    if (w > *most) *most = w;
    if (!(w <= TOLERANCE)) printf("  %s: %s differs by %.3g of its largest value\n", family, name, w);
    return TT_CHECK(w <= TOLERANCE);
}
static tt_batch *batch_of(const golden *g) {
    tt_batch_desc d = TT_INIT;
    d.n_sequences = g->n;
    d.offsets = g->offsets;
    d.tokens = g->tokens;
    return tt_batch_create(g->ctx, &d);
}
/* Logits of all tokens, malloc'd; the graph is reset. */
static float *logits_of(tt_model *m, const golden *g, size_t *n) {
    tt_context *ctx = g->ctx;
    tt_tensor *logits;
    float *out;
    tt_no_grad_begin(ctx);
    logits = tt_model_logits(m, tt_model_forward(m, batch_of(g)));
    tt_no_grad_end(ctx);
    if (!TT_CHECK(logits != NULL)) { printf("  %s\n", tt_error(ctx)); tt_step_reset(ctx); return NULL; }
    *n = logits->size;
    out = (float *)malloc(logits->size * sizeof *out);
    tt_tensor_get(logits, out);
    tt_step_reset(ctx);
    return out;
}
/* One backward pass of the mean negative log-prob; logprobs malloc'd. */
static float *backward(tt_model *m, const golden *g, size_t *n) {
    tt_context *ctx = g->ctx;
    tt_tensor *logprobs = tt_model_logprobs(m, batch_of(g), 1.0f, NULL);
    float *out = NULL;
    if (logprobs && TT_CHECK_OK(ctx, tt_backward(ctx, tt_neg(ctx, tt_mean(ctx, logprobs))))) {
        *n = logprobs->size;
        out = (float *)malloc(*n * sizeof *out);
        tt_tensor_get(logprobs, out);
    }
    tt_step_reset(ctx);
    return out;
}
/* Every gradient in the golden file against the model's; none may be left over on either side. */
static double check_gradients(tt_model *m, const golden *g, const char *family) {
    int i, listed = 0, trained = 0;
    double most = 0;
    for (i = 0; i < tt_safetensors_count(g->values); i++) listed += strncmp(tt_safetensors_info_get(g->values, i).name, "grad.", 5) == 0;
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *p = tt_model_param(m, i);
        char name[200];
        float *grad;
        if (!p->requires_grad) { TT_CHECK(p->grad == NULL); continue; }
        trained++;
        snprintf(name, sizeof name, "grad.%s", p->name);
        grad = (float *)malloc(p->size * sizeof *grad);
        tt_tensor_get_grad(p, grad);
        check_worst(g, family, name, grad, p->size, &most);
        free(grad);
    }
    TT_CHECK_INT(trained, listed);
    return most;
}

/* ---- what was saved here, for transformers ---- */
static const char *saved_dir(const char *family, const char *what) {
    char *out = tt_test_buffer();
    tt_test_mkdir("build");
    tt_test_mkdir("build/parity");
    tt_test_mkdir("build/parity/saved");
    snprintf(out, 1024, "build/parity/saved/%s-%s", family, what);
    return out;
}
/* The logits that the loaded directory must give again. */
static void save_logits(tt_model *m, const golden *g, const char *dir) {
    size_t n = 0;
    float *logits = logits_of(m, g, &n);
    int shape[2];
    char path[1200];
    tt_named named;
    tt_tensor *t;
    shape[0] = g->offsets[g->n];
    shape[1] = tt_model_config_get(m)->vocab_size;
    t = tt_tensor_create(g->ctx, TT_F32, 2, shape, "logits");
    if (!t || !logits) { free(logits); tt_tensor_destroy(t); return; }
    tt_tensor_set(t, logits);
    named.name = "logits";
    named.tensor = t;
    snprintf(path, sizeof path, "%s/ours.safetensors", dir);
    TT_CHECK_OK(g->ctx, tt_state_save(g->ctx, path, &named, 1, ""));
    tt_tensor_destroy(t);
    free(logits);
}
static void check_same_logits(tt_model *a, tt_model *b, const golden *g) {
    size_t n = 0, k = 0;
    float *x = logits_of(a, g, &n), *y = logits_of(b, g, &k);
    TT_CHECK_INT(n, k);
    if (x && y && n == k) TT_CHECK_BYTES(x, y, n * sizeof *x);
    free(x);
    free(y);
}

TT_TEST(logits_logprobs_and_every_gradient) {
    int f;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = tt_model_load(ctx, path_of(families[f], ""));
        golden g;
        size_t n = 0;
        float *values;
        double logits = 0, logprobs = 0;
        if (!TT_CHECK(m != NULL)) { printf("  %s\n", tt_error(ctx)); tt_destroy(ctx); continue; }
        if (TT_CHECK(golden_open(&g, ctx, families[f], ""))) {
            values = logits_of(m, &g, &n);
            check_worst(&g, families[f], "logits", values, n, &logits);
            free(values);
            values = backward(m, &g, &n);
            check_worst(&g, families[f], "logprobs", values, n, &logprobs);
            free(values);
            printf("  %-8s logits %.1e, log-probs %.1e, gradients %.1e of %d parameters\n", families[f], logits, logprobs, check_gradients(m, &g, families[f]), tt_model_n_params(m));
        }
        golden_close(&g);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* The most likely next token of a sequence, from a forward pass over all of it. */
static int32_t next_token(tt_model *m, const int32_t *tokens, int n) {
    tt_context *ctx = tt_model_context(m);
    tt_batch_desc d = TT_INIT;
    int32_t offsets[2], best = 0;
    tt_tensor *logits;
    int vocab = tt_model_config_get(m)->vocab_size, i;
    const float *row;
    offsets[0] = 0;
    offsets[1] = n;
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = tokens;
    tt_no_grad_begin(ctx);
    logits = tt_model_logits(m, tt_model_forward(m, tt_batch_create(ctx, &d)));
    tt_no_grad_end(ctx);
    if (!logits) return -1;
    row = TT_F(logits) + (size_t)(n - 1) * (size_t)vocab;
    for (i = 1; i < vocab; i++) if (row[i] > row[best]) best = (int32_t)i;
    tt_step_reset(ctx);
    return best;
}
TT_TEST(greedy_texts_with_and_without_cache) {
    int f, s, i;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = tt_model_load(ctx, path_of(families[f], ""));
        golden g;
        tt_request requests[MAX_SEQUENCES];
        tt_completions out = TT_INIT;
        tt_sampling sampling;
        TT_REQUIRE(m != NULL && golden_open(&g, ctx, families[f], ""));
        sampling = tt_model_sampling(m);
        TT_CHECK_INT(sampling.n_stop_tokens, g.n_stops);
        TT_CHECK_BYTES(sampling.stop_tokens, g.stops, (size_t)g.n_stops * sizeof(int32_t));
        TT_CHECK_INT(sampling.greedy, 1);
        sampling.max_new_tokens = 20;
        memset(requests, 0, sizeof requests);
        for (s = 0; s < g.n; s++) {
            requests[s].prompt = g.tokens + g.offsets[s];
            requests[s].prompt_length = g.offsets[s + 1] - g.offsets[s];
        }
        TT_CHECK_OK(ctx, tt_generate(m, requests, g.n, &sampling, &out));
        TT_CHECK_INT(out.n, g.n);
        for (s = 0; s < out.n; s++) {
            int32_t text[MAX_TOKENS];
            int n = requests[s].prompt_length;
            TT_CHECK_INT(out.items[s].length, g.greedy_length[s]);
            TT_CHECK_BYTES(out.items[s].tokens, g.greedy[s], (size_t)g.greedy_length[s] * sizeof(int32_t));
            memcpy(text, requests[s].prompt, (size_t)n * sizeof *text);
            for (i = 0; i < g.greedy_length[s]; i++, n++) {
                text[n] = next_token(m, text, n);
                TT_CHECK_INT(text[n], g.greedy[s][i]);
            }
        }
        tt_completions_free(&out);
        golden_close(&g);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* Weights left in the file, as bf16 and f16 too, give the same bits as converted ones. */
TT_TEST(mapped_weights_change_no_bit) {
    int f;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = tt_model_load(ctx, path_of(families[f], "")), *mapped = tt_model_map(ctx, path_of(families[f], ""));
        golden g;
        int i, lent = 0, half = 0;
        if (!mapped) printf("  %s\n", tt_error(ctx));
        TT_REQUIRE(m != NULL && mapped != NULL && golden_open(&g, ctx, families[f], ""));
        check_same_logits(m, mapped, &g);
        for (i = 0; i < tt_model_n_params(mapped); i++) {
            const tt_tensor *p = tt_model_param(mapped, i);
            lent += p->lent;
            half += p->dtype != TT_F32;
            TT_CHECK_INT(p->requires_grad, 0);
        }
        TT_CHECK((lent > 0) == !TT_TEST_DEVICE);            /* a device has copies */
        TT_CHECK_INT(half > 0, strcmp(families[f], "mistral") == 0 || strcmp(families[f], "qwen2") == 0);
        golden_close(&g);
        tt_model_destroy(mapped);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

TT_TEST(saved_models_load_again) {
    int f, step;
    for (f = 0; f < N_FAMILIES; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = tt_model_load(ctx, path_of(families[f], "")), *again;
        golden g;
        tt_save_desc shards = TT_INIT;
        tt_optimizer *adamw;
        const char *dir = saved_dir(families[f], "same");
        TT_REQUIRE(m != NULL && golden_open(&g, ctx, families[f], ""));
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
        save_logits(m, &g, dir);
        again = tt_model_load(ctx, dir);
        TT_REQUIRE(again != NULL);
        check_same_logits(m, again, &g);
        tt_model_destroy(again);

        dir = saved_dir(families[f], "bf16shards");
        shards.dtype = TT_BF16;
        shards.max_shard_bytes = 5000;
        TT_CHECK_OK(ctx, tt_model_save_as(m, NULL, dir, &shards));
        again = tt_model_load(ctx, dir);
        if (!again) printf("  %s\n", tt_error(ctx));
        TT_REQUIRE(again != NULL);
        save_logits(again, &g, dir);
        if (strcmp(families[f], "mistral") == 0) check_same_logits(m, again, &g);      /* was bf16 from the start */
        tt_model_destroy(again);

        adamw = tt_adamw_create(m, NULL);
        for (step = 0; adamw && step < 3; step++) {
            size_t n;
            free(backward(m, &g, &n));
            TT_CHECK_OK(ctx, tt_optimizer_step(adamw, 1e-2f, NULL));
        }
        tt_optimizer_destroy(adamw);
        dir = saved_dir(families[f], "trained");
        TT_CHECK_OK(ctx, tt_model_save(m, NULL, dir));
        save_logits(m, &g, dir);
        golden_close(&g);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

TT_TEST(adapters_of_peft) {
    int f, step;
    for (f = 0; f < N_ADAPTED; f++) {
        tt_context *ctx = tt_create(NULL);
        tt_model *base = tt_model_load(ctx, path_of(adapted[f], "")), *m = tt_model_map(ctx, path_of(adapted[f], ""));
        golden g;
        tt_optimizer *adamw;
        size_t n = 0;
        float *values;
        double logits = 0, logprobs = 0, merged = 0;
        const char *dir;
        TT_REQUIRE(base != NULL && m != NULL && golden_open(&g, ctx, adapted[f], "/lora"));
        if (!TT_CHECK_OK(ctx, tt_model_lora_load(m, path_of(adapted[f], "/lora")))) return;
        values = logits_of(m, &g, &n);
        check_worst(&g, adapted[f], "logits", values, n, &logits);
        free(values);
        values = backward(m, &g, &n);
        check_worst(&g, adapted[f], "logprobs", values, n, &logprobs);
        free(values);
        printf("  %-8s logits %.1e, log-probs %.1e, gradients %.1e of %d adapter halves\n", adapted[f], logits, logprobs, check_gradients(m, &g, adapted[f]),
               tt_model_n_params(m) - tt_model_n_params(base));
        TT_CHECK_INT(tt_model_lora_enable(m, 0), 1);
        check_same_logits(m, base, &g);                              /* off: the base, bit for bit */
        TT_CHECK_INT(tt_model_lora_enable(m, 1), 0);
        dir = saved_dir(adapted[f], "lora");
        TT_CHECK_OK(ctx, tt_model_lora_save(m, dir));
        save_logits(m, &g, dir);

        TT_CHECK_OK(ctx, tt_model_lora_load(base, dir));
        check_same_logits(m, base, &g);
        TT_CHECK_OK(ctx, tt_model_lora_merge(base));
        values = logits_of(base, &g, &n);
        check_worst(&g, adapted[f], "merged.logits", values, n, &merged);
        free(values);
        dir = saved_dir(adapted[f], "merged");
        TT_CHECK_OK(ctx, tt_model_save(base, NULL, dir));
        save_logits(base, &g, dir);

        adamw = tt_adamw_create(m, NULL);
        tt_model_zero_grad(m);
        for (step = 0; adamw && step < 3; step++) {
            free(backward(m, &g, &n));
            TT_CHECK_OK(ctx, tt_optimizer_step(adamw, 1e-2f, NULL));
        }
        tt_optimizer_destroy(adamw);
        dir = saved_dir(adapted[f], "lora_trained");
        TT_CHECK_OK(ctx, tt_model_lora_save(m, dir));
        save_logits(m, &g, dir);
        golden_close(&g);
        tt_model_destroy(base);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* A number or null, for minus infinity. */
static int read_logits(const tt_json *list, float *out, int room) {
    const tt_json *z;
    int n = 0;
    for (z = list ? list->child : NULL; z && n < room; z = z->next) { out[n++] = z->type == TT_JSON_NULL ? -(float)HUGE_VAL : (float)z->number; }
    return n;
}
static int ascending(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return x < y ? -1 : x > y; }
/* What is left of the logits under the case's controls is what transformers' warpers leave of them. */
TT_TEST(sampling_controls_keep_the_same_tokens) {
    enum { WIDE = 64 };
    const char *root = getenv("TT_PARITY_DIR");
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    tt_json *json;
    const tt_json *one;
    int n_cases = 0, n_equal = 0;
    char path[1024];
    text.ctx = ctx;
    snprintf(path, sizeof path, "%s/sampler.json", root ? root : "tests/golden");
    TT_REQUIRE(tt_file_read(ctx, path, &text) == TT_OK);
    json = tt_json_parse(ctx, text.data, text.size);
    TT_REQUIRE(json != NULL);
    for (one = tt_json_get(json, "cases")->child; one; one = one->next, n_cases++) {
        float logits[WIDE], scores[WIDE], w[WIDE], largest = -FLT_MAX;
        float want[WIDE], got[WIDE];
        int32_t ids[WIDE];
        tti_ranking ranking;
        tt_sampling s = TT_INIT;
        int n = read_logits(tt_json_get(one, "logits"), logits, WIDE), n_kept = read_logits(tt_json_get(one, "kept"), want, WIDE), left, n_left = 0, i, same;
        s.temperature = (float)tt_json_number(one, "temperature", 1);
        s.top_k = (int)tt_json_number(one, "top_k", 0);
        s.top_p = (float)tt_json_number(one, "top_p", 1);
        s.min_p = (float)tt_json_number(one, "min_p", 0);
        for (i = 0; i < n; i++) { scores[i] = logits[i] / s.temperature; largest = logits[i] > largest ? logits[i] : largest; }
        for (i = 0; i < n; i++) { w[i] = (logits[i] - largest) * (1.0f / s.temperature); }
        tti_row_exp(ctx, w, n);
        tti_ranking_begin(&ranking, scores, ids, n);
        left = tti_candidates(&ranking, w, &s);
        for (i = left; i-- > 0; ) { if (logits[ids[n - 1 - i]] > -(float)HUGE_VAL) { got[n_left++] = logits[ids[n - 1 - i]]; } }
        qsort(got, (size_t)n_left, sizeof *got, ascending);      /* some cases leave all, unsorted */
        same = n_left == n_kept && memcmp(want, got, (size_t)n_left * sizeof *got) == 0;
        n_equal += same;
        if (!same) {
            printf("  case %d: %d tokens, temperature %g, top_k %d, top_p %g, min_p %g: %d kept, expected %d\n", n_cases, n, (double)s.temperature,
                   s.top_k, (double)s.top_p, (double)s.min_p, n_left, n_kept);
        }
    }
    printf("  %d of %d sets equal\n", n_equal, n_cases);
    TT_CHECK(n_cases > 0);
    TT_CHECK_INT(n_equal, n_cases);
    tt_json_free(ctx, json);
    tt_text_free(&text);
    tt_destroy(ctx);
}

TT_MAIN(logits_logprobs_and_every_gradient, greedy_texts_with_and_without_cache, mapped_weights_change_no_bit, saved_models_load_again, adapters_of_peft, sampling_controls_keep_the_same_tokens)
