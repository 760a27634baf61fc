/* Chapter 8: what is sampled depends on (model, prompt, settings, seed, request id, sample) and nothing else,
 * and its log-probs are those of training, bit for bit. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

static tt_model *small_model(tt_context *ctx, int gpt2) {
    tt_model_config c = TT_INIT;
    c.vocab_size = 61;
    c.hidden_size = 24;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 4;
    c.num_key_value_heads = gpt2 ? 4 : 2;
    c.max_position_embeddings = 160;
    c.gpt2 = gpt2;
    c.tie_word_embeddings = gpt2;
    c.bos_token_id = c.eos_token_id = -1;
    return tt_model_create(ctx, &c, 3);
}
static const int32_t P0[] = {5, 9, 2, 33, 7}, P1[] = {17}, P2[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
static void requests_of(tt_request *r) {
    memset(r, 0, 3 * sizeof *r);
    r[0].prompt = P0; r[0].prompt_length = 5; r[0].n = 4; r[0].id = 100;
    r[1].prompt = P1; r[1].prompt_length = 1; r[1].n = 3; r[1].id = 200;
    r[2].prompt = P2; r[2].prompt_length = 11; r[2].n = 5; r[2].id = 300;
}
static tt_sampling usual(void) {
    static const int32_t stops[2] = {11, 12};
    tt_sampling s = TT_INIT;
    s.max_new_tokens = 70;
    s.temperature = 0.9f;
    s.seed = 77;
    s.stop_tokens = stops;
    s.n_stop_tokens = 2;
    return s;
}
/* The log-probs that training computes for prompt + response. */
static void training_logprobs(tt_model *m, const tt_request *r, const tt_completion *c, float temperature, float *out) {
    tt_context *ctx = tt_model_context(m);
    int32_t tokens[256], offsets[2] = {0, 0};
    unsigned char mask[256];
    tt_batch_desc d = TT_INIT;
    offsets[1] = (int32_t)(r->prompt_length + c->length);
    memcpy(tokens, r->prompt, (size_t)r->prompt_length * sizeof *tokens);
    memcpy(tokens + r->prompt_length, c->tokens, (size_t)c->length * sizeof *tokens);
    memset(mask, 0, sizeof mask);
    memset(mask + r->prompt_length, 1, (size_t)c->length);
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = tokens;
    d.mask = mask;
    tt_tensor_get(tt_model_logprobs(m, tt_batch_create(ctx, &d), temperature, NULL), out);
    tt_step_reset(ctx);
}
TT_TEST(sampling_logprobs_are_training_logprobs) {
    static const char *const kernels[2] = {NULL, "portable"};
    int k, gpt2, i;
    for (k = 0; k < 2; k++) {
        for (gpt2 = 0; gpt2 < 2; gpt2++) {
            tt_desc desc = TT_INIT;
            tt_context *ctx;
            tt_model *m;
            tt_request r[3];
            tt_sampling s = usual();
            tt_completions c;
            desc.kernel = kernels[k];
            ctx = tt_create(&desc);
            m = small_model(ctx, gpt2);
            requests_of(r);
            s.max_batch = 5;
            TT_CHECK_OK(ctx, tt_generate(m, r, 3, &s, &c));
            TT_CHECK_INT(c.n, 12);
            for (i = 0; i < c.n; i++) {
                float again[128];
                training_logprobs(m, &r[c.items[i].request], &c.items[i], s.temperature, again);
                TT_CHECK_BYTES(c.items[i].logprobs, again, (size_t)c.items[i].length * sizeof(float));
                TT_CHECK(c.items[i].stopped == (c.items[i].tokens[c.items[i].length - 1] == 11 || c.items[i].tokens[c.items[i].length - 1] == 12));
                TT_CHECK(c.items[i].stopped || c.items[i].length == 70);
            }
            tt_completions_free(&c);
            tt_model_destroy(m);
            tt_destroy(ctx);
        }
    }
}
static void same_completions(const tt_completion *a, const tt_completion *b) {
    TT_CHECK_INT(a->length, b->length);
    TT_CHECK_INT(a->stopped, b->stopped);
    if (a->length != b->length) return;
    TT_CHECK_BYTES(a->tokens, b->tokens, (size_t)a->length * sizeof(int32_t));
    TT_CHECK_BYTES(a->logprobs, b->logprobs, (size_t)a->length * sizeof(float));
}
TT_TEST(neighbours_slots_and_threads_change_nothing) {
    static const int batches[4] = {1, 2, 7, 0}, threads[4] = {1, 2, 1, 2};
    tt_completions first = TT_INIT;
    tt_context *keep = NULL;
    int k, i;
    for (k = 0; k < 4; k++) {
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_model *m;
        tt_request r[3];
        tt_sampling s = usual();
        tt_completions c, one;
        desc.n_threads = threads[k];
        ctx = tt_create(&desc);
        m = small_model(ctx, 0);
        requests_of(r);
        s.max_batch = batches[k];
        s.top_k = 20;
        TT_CHECK_OK(ctx, tt_generate(m, r, 3, &s, &c));
        for (i = 0; k > 0 && i < c.n; i++) same_completions(&first.items[i], &c.items[i]);
        TT_CHECK_OK(ctx, tt_generate(m, r + 2, 1, &s, &one));          /* alone */
        for (i = 0; i < one.n; i++) same_completions(&c.items[7 + i], &one.items[i]);
        tt_completions_free(&one);
        tt_model_destroy(m);
        if (k == 0) { first = c; keep = ctx; } else { tt_completions_free(&c); tt_destroy(ctx); }
    }
    TT_CHECK(memcmp(first.items[0].tokens, first.items[1].tokens, sizeof(int32_t)) != 0
             || first.items[0].length != first.items[1].length || first.items[0].length > 1);
    tt_completions_free(&first);
    tt_destroy(keep);
}
/* A CPU backend that counts the rows of embeddings, so the tokens that run through the model. */
static tt_backend counting;
static long n_rows;
static tt_status counting_gather(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n, int dim) {
    n_rows += n;
    return tt_cpu_backend()->gather_rows(ctx, y, x, rows, n, dim);
}
static size_t n_copied;
static tt_status counting_copy(tt_context *ctx, void *to, const void *from, size_t bytes) {
    n_copied += bytes;
    return tt_cpu_backend()->copy(ctx, to, from, bytes);
}
/* Five prompts that begin with `common` equal tokens and one more: all of the second, so that its last token stays its own. */
enum { COMMON = 130, TAILS = 5 };
static void alike_requests(tt_request *r, int32_t (*prompts)[COMMON + 4], int common) {
    static const int32_t tails[TAILS][4] = {{6, 7}, {6}, {6, 8, 9}, {6, 8, 9, 10}, {6, 8}};
    static const int lengths[TAILS] = {2, 1, 3, 4, 2};
    int i, k;
    memset(r, 0, TAILS * sizeof *r);
    for (i = 0; i < TAILS; i++) {
        for (k = 0; k < common; k++) { prompts[i][k] = (int32_t)(k * 7 % 53); }
        for (k = 0; k < lengths[i]; k++) { prompts[i][common + k] = tails[i][k]; }
        r[i].prompt = prompts[i];
        r[i].prompt_length = common + lengths[i];
        r[i].n = 2;
        r[i].id = (uint64_t)i;
    }
}
/* All of them at once, `max_batch` at a time, beside each alone. Returns the bytes copied between slots. */
static size_t share_what_they_begin_with(tt_model *m, int common, int max_batch) {
    tt_context *ctx = tt_model_context(m);
    int32_t prompts[TAILS][COMMON + 4];
    tt_request r[TAILS];
    tt_sampling s = usual();
    tt_completions c, one;
    long together, alone = 0, sampled = 0;
    size_t copied;
    int i, j;
    alike_requests(r, prompts, common);
    s.max_batch = max_batch;
    s.max_new_tokens = 20;
    n_rows = 0;
    n_copied = 0;
    TT_CHECK_OK(ctx, tt_generate(m, r, TAILS, &s, &c));
    copied = n_copied;
    together = n_rows;
    TT_CHECK_INT(c.n, 2 * TAILS);
    for (i = 0; i < TAILS; i++) {
        n_rows = 0;
        TT_CHECK_OK(ctx, tt_generate(m, r + i, 1, &s, &one));
        alone += n_rows;
        for (j = 0; j < 2 && c.n == 2 * TAILS; j++) {
            same_completions(&c.items[2 * i + j], &one.items[j]);
            sampled += one.items[j].length;
        }
        tt_completions_free(&one);
    }
    TT_CHECK(together < alone);
    if (max_batch == 0) { TT_CHECK_INT(together, sampled + common + (2 + 1 + 3 + 4 + 2) - TAILS); }
    tt_completions_free(&c);
    return copied;
}
/* From a block of keys on they are not copied to all sequences but read in one place. */
TT_TEST(prompts_share_what_they_begin_with) {
    static const int batches[3] = {1, 3, 0}, commons[3] = {37, 96, 130};
    size_t copied[3] = {0, 0, 0};
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model *m;
    int i, k;
    counting = *tt_cpu_backend();
    counting.gather_rows = counting_gather;
    counting.copy = counting_copy;
    desc.backend = &counting;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    m = small_model(ctx, 0);
    for (i = 0; i < 3; i++) {
        for (k = 0; k < 3; k++) { copied[i] = share_what_they_begin_with(m, commons[i], batches[k]); }
    }
    TT_CHECK(copied[1] < copied[0] / 2);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
/* Panels and cache lie in the memory of the step, which stays: the next tt_generate needs no more. */
TT_TEST(generating_again_takes_the_memory_that_is_there) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model *m;
    tt_request r[3];
    tt_sampling s = usual();
    tt_completions c;
    size_t live, before;
    int k;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    m = small_model(ctx, 0);
    requests_of(r);
    before = memory.live_bytes;
    for (k = 0, live = 0; k < 3; k++) {
        TT_CHECK_OK(ctx, tt_generate(m, r, 3, &s, &c));
        tt_completions_free(&c);
        if (k > 0) { TT_CHECK_INT(memory.live_bytes, live); }
        live = memory.live_bytes;
        tt_step_reset(ctx);
    }
    TT_CHECK(live > before + ((size_t)1 << 20));      /* it is kept, for the update */
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(cached_decoding_equals_the_full_forward) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_kv_cache *cache = tt_kv_cache_create(m, 3, 20);
    static const int32_t offsets[2] = {0, 11}, one[2] = {0, 1}, slot1[1] = {1};
    int32_t first[2] = {0, 4};
    float full[11 * 24], piece[11 * 24];
    tt_batch_desc d = TT_INIT;
    int t;
    tt_no_grad_begin(ctx);
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = P2;
    tt_tensor_get(tt_model_forward(m, tt_batch_create(ctx, &d)), full);
    d.cache = cache;
    d.cache_slots = slot1;
    d.offsets = first;
    tt_tensor_get(tt_model_forward(m, tt_batch_create(ctx, &d)), piece);
    TT_CHECK_BYTES(full, piece, 4 * 24 * sizeof(float));
    TT_CHECK_INT(tt_kv_cache_length(cache, 1), 4);
    for (t = 4; t < 11; t++) {
        d.offsets = one;
        d.tokens = P2 + t;
        tt_tensor_get(tt_model_forward(m, tt_batch_create(ctx, &d)), piece);
        TT_CHECK_BYTES(full + t * 24, piece, 24 * sizeof(float));
    }
    TT_CHECK_OK(ctx, tt_kv_cache_share(cache, 1, 2, 6));
    tt_kv_cache_truncate(cache, 1, 6);
    { static const int32_t slot2[1] = {2}; d.cache_slots = slot2; }
    d.tokens = P2 + 6;
    tt_tensor_get(tt_model_forward(m, tt_batch_create(ctx, &d)), piece);
    TT_CHECK_BYTES(full + 6 * 24, piece, 24 * sizeof(float));
    TT_CHECK_INT(tt_kv_cache_length(cache, 1), 6);
    TT_CHECK(tt_kv_cache_share(cache, 1, 3, 2) == TT_ERR_ARG);
    TT_CHECK(tt_kv_cache_share(cache, 1, 0, 7) == TT_ERR_ARG);
    first[1] = 11;
    d.offsets = first;
    d.tokens = P2;
    TT_CHECK(tt_model_forward(m, tt_batch_create(ctx, &d)) != NULL);     /* 7 + 11 <= 20 */
    TT_CHECK(tt_model_forward(m, tt_batch_create(ctx, &d)) == NULL);     /* 18 + 11 > 20 */
    TT_CHECK_CONTAINS(tt_error(ctx), "29");
    tt_kv_cache_destroy(cache);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
/* Logits after a prompt, to predict what the controls must allow. */
static void logits_after(tt_model *m, const int32_t *prompt, int n, float *out) {
    tt_context *ctx = tt_model_context(m);
    int32_t offsets[2] = {0, 0}, last = (int32_t)(n - 1);
    tt_batch_desc d = TT_INIT;
    offsets[1] = (int32_t)n;
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = prompt;
    tt_no_grad_begin(ctx);
    tt_tensor_get(tt_model_logits(m, tt_gather_rows(ctx, tt_model_forward(m, tt_batch_create(ctx, &d)), &last, 1)), out);
    tt_no_grad_end(ctx);
    tt_step_reset(ctx);
}
static int descending(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return x < y ? 1 : x > y ? -1 : 0; }

/* Draws one token 4000 times under the controls; each token must come with its renormalised probability. */
static void check_control(tt_sampling s) {
    enum { N = 4000, V = 61 };
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_completions c;
    float logits[V];
    double p[V], sorted[V], total = 0, mass = 0, floor_p = 0;
    long count[V];
    int i, allowed = 0, seen_outside = 0;
    requests_of(r);
    r[0].n = N;
    s.max_new_tokens = 1;
    s.max_batch = 512;
    logits_after(m, P0, 5, logits);
    for (i = 0; s.repetition_penalty != 0 && i < 5; i++) logits[P0[i]] *= logits[P0[i]] > 0 ? 1 / s.repetition_penalty : s.repetition_penalty;
    for (i = 0; i < V; i++) { p[i] = exp((double)logits[i] / (double)s.temperature); total += p[i]; }
    for (i = 0; i < V; i++) { sorted[i] = p[i] /= total; }
    qsort(sorted, V, sizeof *sorted, descending);
    if (s.top_k) floor_p = sorted[s.top_k - 1];
    if (s.top_p > 0) {
        double within = 0;
        for (i = 0; i < V; i++) if (sorted[i] >= floor_p) within += sorted[i];
        for (i = 0; i < V && mass < (double)s.top_p * within; i++) mass += sorted[i];
        if (i > 0 && sorted[i - 1] > floor_p) floor_p = sorted[i - 1];
    }
    if ((double)s.min_p * sorted[0] > floor_p) floor_p = (double)s.min_p * sorted[0];
    for (total = 0, i = 0; i < V; i++) { if (p[i] >= floor_p * (1 - 1e-6)) { total += p[i]; allowed++; } }
    TT_CHECK_OK(ctx, tt_generate(m, r, 1, &s, &c));
    memset(count, 0, sizeof count);
    for (i = 0; i < c.n; i++) count[c.items[i].tokens[0]]++;
    for (i = 0; i < V; i++) {
        double want = p[i] / total, sd = sqrt(want * (1 - want) / N);
        if (p[i] < floor_p * (1 - 1e-6)) { seen_outside += count[i] != 0; continue; }
        TT_CHECK(fabs((double)count[i] / N - want) < 5 * sd + 1e-9);
    }
    TT_CHECK_INT(seen_outside, 0);
    TT_CHECK(allowed > 1 && (allowed < V || (s.top_k == 0 && s.top_p == 0 && s.min_p == 0)));
    tt_completions_free(&c);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
TT_TEST(controls_give_the_renormalised_distribution) {
    tt_sampling s = TT_INIT;
    if (tt_test_emulated()) { TT_SKIP("tens of thousands of tokens"); }
    s.temperature = 0.6f;
    s.seed = 5;
    check_control(s);
    s.top_k = 7;
    check_control(s);
    s.top_k = 0;
    s.top_p = 0.8f;
    check_control(s);
    s.top_k = 12;
    check_control(s);
    s.top_k = 0;
    s.top_p = 0;
    s.min_p = 0.4f;
    check_control(s);
    s.top_p = 0.9f;
    s.top_k = 30;
    s.repetition_penalty = 1.7f;
    check_control(s);
}
/* transformers' warpers one after another, written down as they are there: TopK, TopP, MinP over scores that are the logits /
 * temperature. w: e to the power of each score, less the largest. kept[i] = 1 for what is left. */
enum { WIDE = 61 };
static int ascending_scores(const float *scores, int a, int b) { return scores[a] < scores[b] || (scores[a] == scores[b] && a > b); }
static void softmax_of(const float *w, const char *kept, int n, float *p) {
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) { if (kept[i]) { sum += (double)w[i]; } }
    for (i = 0; i < n; i++) { p[i] = kept[i] ? (float)((double)w[i] / sum) : 0; }
}
static void warpers(const float *scores, const float *w, int n, int top_k, double top_p, float min_p, char *kept) {
    int order[WIDE], i, k;
    float p[WIDE], least;
    double sum = 0;
    for (i = 0; i < n; i++) {                                 /* ascending, of equals the lowest id last */
        for (k = i; k > 0 && ascending_scores(scores, i, order[k - 1]); k--) { order[k] = order[k - 1]; }
        order[k] = i;
    }
    for (i = 0; i < n; i++) { kept[i] = 1; }
    if (top_k > 0) { for (i = 0; i < n; i++) { kept[i] = scores[i] >= scores[order[n - (top_k < n ? top_k : n)]]; } }
    if (top_p < 1) {
        softmax_of(w, kept, n, p);
        for (i = 0; i < n - 1; i++) {
            sum += (double)p[order[i]];
            if ((float)sum <= (float)(1 - top_p)) { kept[order[i]] = 0; }
        }
    }
    softmax_of(w, kept, n, p);
    least = min_p * p[order[n - 1]];
    for (i = 0; i < n - 1; i++) { kept[order[i]] = (char)(kept[order[i]] && p[order[i]] >= least); }
}
/* Logits of all shapes: of many values, of few (so that many are equal), all equal, some minus infinity. */
static void random_logits(tt_rng *rng, float *logits, int n) {
    int kind = tt_rng_below(rng, 5), i;
    double wide = 0.1 + 6 * tt_rng_uniform(rng);
    for (i = 0; i < n; i++) {
        double z = wide * tt_rng_normal(rng);
        if (kind == 1) { z = floor(z); }
        if (kind == 2) { z = 1.5; }
        if (kind == 3 && i > 0 && tt_rng_below(rng, 3) == 0) { z = -HUGE_VAL; }
        if (kind == 4) { z = log(1 + tt_rng_below(rng, 4)); }
        logits[i] = (float)z;
    }
}
TT_TEST(controls_keep_what_the_warpers_of_transformers_keep) {
    static const double round_p[] = {1, 0.95, 0.9, 0.8, 0.75, 0.5, 0.3, 0.25, 0.1, 1e-39}, round_min[] = {0, 0.05, 0.1, 0.25, 0.5, 1, 1e-39};
    tt_context *ctx = tt_create(NULL);
    tt_rng rng = {8, 1, 0};
    int turn, wrong = 0, all_three = 0, equal = 0;
    for (turn = 0; turn < 20000 && !wrong; turn++) {
        float logits[WIDE], scores[WIDE], w[WIDE];
        char want[WIDE], got[WIDE];
        int32_t ids[WIDE];
        tt_sampling s = TT_INIT;
        tti_ranking ranking;
        int n = 1 + tt_rng_below(&rng, WIDE), left, i;
        double top_p = tt_rng_below(&rng, 2) ? round_p[tt_rng_below(&rng, 10)] : (double)(float)(0.001 + 0.998 * tt_rng_uniform(&rng));
        double min_p = tt_rng_below(&rng, 2) ? round_min[tt_rng_below(&rng, 7)] : tt_rng_uniform(&rng) * tt_rng_uniform(&rng);
        random_logits(&rng, logits, n);
        s.temperature = tt_rng_below(&rng, 3) ? (float)exp(2 * tt_rng_normal(&rng)) : 1.0f;
        s.top_k = tt_rng_below(&rng, 3) ? 1 + tt_rng_below(&rng, n + 3) : 0;
        s.top_p = (float)top_p;
        s.min_p = (float)min_p;
        for (i = 0; i < n; i++) { scores[i] = logits[i] / s.temperature; }
        { float top = scores[0]; for (i = 1; i < n; i++) { top = scores[i] > top ? scores[i] : top; } for (i = 0; i < n; i++) { w[i] = scores[i] - top; } }
        tti_row_exp(ctx, w, n);
        warpers(scores, w, n, s.top_k, top_p, s.min_p, want);
        memset(got, 0, sizeof got);
        tti_ranking_begin(&ranking, scores, ids, n);
        left = tti_candidates(&ranking, w, &s);
        for (i = 0; i < left; i++) { got[ids[n - 1 - i]] = 1; }
        wrong = memcmp(want, got, (size_t)n) != 0;
        if (wrong) { printf("case %d: n %d temperature %g top_k %d top_p %g min_p %g\n", turn, n, (double)s.temperature, s.top_k, top_p, min_p); }
        all_three += s.top_k > 0 && s.top_k < n && top_p < 1 && min_p > 0;
        for (i = 1; i < n; i++) { if (logits[i] == logits[i - 1] && got[i] != got[i - 1]) { equal++; break; } }
        for (i = 0; i < 4 && !wrong; i++) {                   /* and nothing else is drawn */
            float scratch[2 * WIDE];
            tti_choice choice = {scratch, scratch + WIDE, ids};
            int n_kept;
            int32_t drawn = tti_choose(ctx, logits, n, &s, i < 3 ? i * 0.33333 : 1 - 1e-16, &choice, &n_kept);
            TT_CHECK(n_kept == left || !tti_is_restricted(&s, n));
            TT_CHECK(drawn >= 0 && drawn < n && ((s.top_k == 0 && s.top_p >= 1 && s.min_p <= 0) || want[drawn]) && w[drawn] > 0);
        }
    }
    TT_CHECK_INT(wrong, 0);
    TT_CHECK(all_three > 3000 && equal > 300);
    tt_destroy(ctx);
}
TT_TEST(equal_tokens_share_their_fate_in_top_k_and_give_way_by_id_in_top_p) {
    static const float logits[6] = {1, 3, 2, 3, 2, 0}, even[10] = {0};
    float w[10], scores[10];
    int32_t ids[10];
    tti_choice choice = {w, scores, ids};
    tt_context *ctx = tt_create(NULL);
    tt_sampling s = TT_INIT;
    int u, n_kept, seen[10] = {0};
    s.temperature = 0.5f;
    s.top_p = 1;
    s.top_k = 3;                                              /* 1, 3, and both of 2 and 4 */
    for (u = 0; u < 100; u++) { seen[tti_choose(ctx, logits, 6, &s, u / 100.0, &choice, &n_kept)]++; }
    TT_CHECK(seen[1] > 0 && seen[2] > 0 && seen[3] > 0 && seen[4] > 0 && seen[0] == 0 && seen[5] == 0);
    memset(seen, 0, sizeof seen);
    s.top_k = 0;
    s.top_p = 0.8f;                                           /* 8 of 10: the two highest ids go */
    for (u = 0; u < 100; u++) { seen[tti_choose(ctx, even, 10, &s, u / 100.0, &choice, &n_kept)]++; }
    TT_CHECK(seen[9] == 0 && seen[8] == 0 && seen[7] > 0 && seen[0] > 0);
    tt_destroy(ctx);
}
TT_TEST(extreme_settings_work_or_are_named) {
    static const float fine[] = {1e-30f, 1e-6f, 1e30f, 3e38f}, bad[] = {1e-39f, 1e-45f, 9e-31f, -1, (float)NAN, (float)INFINITY};
    static const float tiny[] = {1e-45f, 1e-39f, 1e-30f};
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_sampling s = TT_INIT, greedy = TT_INIT;
    tt_completions c, best;
    size_t i, k;
    requests_of(r);
    greedy.greedy = 1;
    greedy.max_new_tokens = s.max_new_tokens = 5;
    TT_CHECK_OK(ctx, tt_generate(m, r, 1, &greedy, &best));
    for (i = 0; i < sizeof fine / sizeof *fine; i++) {
        s.temperature = fine[i];
        TT_CHECK_OK(ctx, tt_generate(m, r, 1, &s, &c));
        if (c.n && fine[i] < 1e-5f) { TT_CHECK_BYTES(c.items[0].tokens, best.items[0].tokens, 5 * sizeof(int32_t)); }
        tt_completions_free(&c);
    }
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[64];
        s.temperature = bad[i];
        snprintf(text, sizeof text, "temperature is %g, expected 1e-30 or more", (double)bad[i]);
        TT_CHECK_INT(tt_generate(m, r, 1, &s, &c), TT_ERR_ARG);
        TT_CHECK_CONTAINS(tt_error(ctx), text);
        {   /* the training side */
            static const int32_t ends[2] = {0, 5};
            tt_batch_desc d = TT_INIT;
            d.n_sequences = 1;
            d.offsets = ends;
            d.tokens = P0;
            TT_CHECK(tt_model_logprobs(m, tt_batch_create(ctx, &d), bad[i], NULL) == NULL);
            TT_CHECK_CONTAINS(tt_error(ctx), text);
            tt_step_reset(ctx);
        }
    }
    s.temperature = 0;
    for (k = 0; k < 3; k++) {
        for (i = 0; i < sizeof tiny / sizeof *tiny; i++) {
            s.top_p = k == 0 ? tiny[i] : 0;
            s.min_p = k == 1 ? tiny[i] : 0;
            s.repetition_penalty = k == 2 ? tiny[i] : 0;
            TT_CHECK_OK(ctx, tt_generate(m, r, 1, &s, &c));
            if (c.n && k == 0) { TT_CHECK_INT(c.items[0].tokens[0], best.items[0].tokens[0]); }
            tt_completions_free(&c);
        }
    }
    s.repetition_penalty = 3e38f;
    TT_CHECK_OK(ctx, tt_generate(m, r, 1, &s, &c));
    tt_completions_free(&c);
    s.repetition_penalty = (float)INFINITY;
    TT_CHECK_INT(tt_generate(m, r, 1, &s, &c), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "repetition_penalty is inf, expected a finite number");
    tt_completions_free(&best);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
TT_TEST(greedy_takes_the_most_likely) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_sampling s = TT_INIT;
    tt_completions c;
    float logits[61];
    int32_t tokens[32];
    int t, i, best;
    requests_of(r);
    r[0].n = 1;
    s.greedy = 1;
    s.max_new_tokens = 12;
    TT_CHECK_OK(ctx, tt_generate(m, r, 1, &s, &c));
    memcpy(tokens, P0, sizeof P0);
    for (t = 0; t < 12; t++) {
        logits_after(m, tokens, 5 + t, logits);
        for (best = 0, i = 1; i < 61; i++) if (logits[i] > logits[best]) best = i;
        TT_CHECK_INT(c.items[0].tokens[t], best);
        tokens[5 + t] = (int32_t)best;
    }
    tt_completions_free(&c);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
static int stop_at_ten(void *user, int request, int sample, int32_t token, float logprob) {
    (void)request;
    (void)sample;
    (void)token;
    (void)logprob;
    return ++*(int *)user == 10;
}
TT_TEST(streaming_and_errors) {
    static const int32_t bad[2] = {3, 61};
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_sampling s = usual(), broken;
    tt_completions c;
    int seen = 0;
    requests_of(r);
    s.on_token = stop_at_ten;
    s.user = &seen;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_STOP);
    TT_CHECK_INT(seen, 10);
    TT_CHECK(c.n == 0 && c.items == NULL);
    s = usual();
    s.max_new_tokens = 150;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "requests[2] has 11 prompt tokens and max_new_tokens is 150");
    s = usual();
    r[1].prompt = bad;
    r[1].prompt_length = 2;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "requests[1].prompt[1] is 61");
    r[1].prompt_length = 0;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_ARG);
    requests_of(r);
    broken = s; broken.temperature = -1;          TT_CHECK(tt_generate(m, r, 3, &broken, &c) == TT_ERR_ARG); TT_CHECK_CONTAINS(tt_error(ctx), "temperature is -1");
    broken = s; broken.top_p = 1.5f;              TT_CHECK(tt_generate(m, r, 3, &broken, &c) == TT_ERR_ARG); TT_CHECK_CONTAINS(tt_error(ctx), "top_p is 1.5");
    broken = s; broken.min_p = (float)NAN;        TT_CHECK(tt_generate(m, r, 3, &broken, &c) == TT_ERR_ARG); TT_CHECK_CONTAINS(tt_error(ctx), "min_p");
    broken = s; broken.repetition_penalty = -2;   TT_CHECK(tt_generate(m, r, 3, &broken, &c) == TT_ERR_ARG); TT_CHECK_CONTAINS(tt_error(ctx), "repetition_penalty");
    broken = s; broken.max_new_tokens = -1;       TT_CHECK(tt_generate(m, r, 3, &broken, &c) == TT_ERR_ARG); TT_CHECK_CONTAINS(tt_error(ctx), "max_new_tokens");
    { float nan[61 * 24]; int i; for (i = 0; i < 61 * 24; i++) nan[i] = (float)NAN; tt_tensor_set(tt_model_param_find(m, "lm_head.weight"), nan); }
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(ctx), "not finite");
    tt_model_destroy(m);
    tt_destroy(ctx);
}

/* ---- what was sampled from: its log-probs, the sets, and training over them ---- */

/* Logits [length, vocab] of the rows that predict a response, by the full forward pass. */
static void response_logits(tt_model *m, const tt_request *r, const tt_completion *c, float *out) {
    tt_context *ctx = tt_model_context(m);
    int32_t tokens[160], offsets[2] = {0, 0}, rows[160];
    tt_batch_desc d = TT_INIT;
    int t;
    offsets[1] = (int32_t)(r->prompt_length + c->length);
    memcpy(tokens, r->prompt, (size_t)r->prompt_length * sizeof *tokens);
    memcpy(tokens + r->prompt_length, c->tokens, (size_t)c->length * sizeof *tokens);
    for (t = 0; t < c->length; t++) { rows[t] = (int32_t)(r->prompt_length - 1 + t); }
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = tokens;
    tt_no_grad_begin(ctx);
    tt_tensor_get(tt_model_logits(m, tt_gather_rows(ctx, tt_model_forward(m, tt_batch_create(ctx, &d)), rows, c->length)), out);
    tt_no_grad_end(ctx);
    tt_step_reset(ctx);
}

/* Brute force of one row: penalty, temperature, warpers, softmax in double over what they leave. */
static double drawn_logprob(const float *raw, int vocab, const tt_sampling *s, const int32_t *history, int n, int32_t token, char *kept) {
    float scores[61] = {0}, w[61] = {0}, top = -HUGE_VALF;
    double sum = 0;
    int i;
    for (i = 0; i < vocab; i++) { scores[i] = raw[i]; }
    for (i = 0; i < n; i++) { scores[history[i]] = raw[history[i]] > 0 ? raw[history[i]] / s->repetition_penalty : raw[history[i]] * s->repetition_penalty; }
    for (i = 0; i < vocab; i++) { scores[i] /= s->temperature; top = scores[i] > top ? scores[i] : top; }
    for (i = 0; i < vocab; i++) { w[i] = (float)exp((double)(scores[i] - top)); }
    warpers(scores, w, vocab, s->top_k, s->top_p > 0 ? (double)s->top_p : 1, s->min_p, kept);
    for (i = 0; i < vocab; i++) { sum += kept[i] ? exp((double)scores[i] - (double)top) : 0; }
    return (double)scores[token] - (double)top - log(sum);
}

static void check_sampled_from(tt_sampling s) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_completions c;
    static float logits[70 * 61];
    int i, t, k, restricted = 0;
    requests_of(r);
    s.keep_sampling_mask = 1;
    s.max_new_tokens = 40;
    if (s.repetition_penalty == 0) { s.repetition_penalty = 1; }
    TT_REQUIRE(tt_generate(m, r, 3, &s, &c) == TT_OK);
    for (i = 0; i < c.n; i++) {
        const tt_completion *item = &c.items[i];
        const tt_request *q = &r[item->request];
        int32_t history[160];
        memcpy(history, q->prompt, (size_t)q->prompt_length * sizeof *history);
        memcpy(history + q->prompt_length, item->tokens, (size_t)item->length * sizeof *history);
        response_logits(m, q, item, logits);
        for (t = 0; t < item->length; t++) {
            char kept[WIDE];
            int n = item->kept.at[t + 1] - item->kept.at[t], n_kept = 0;
            const int32_t *ids = item->kept.ids + item->kept.at[t];
            double want = drawn_logprob(logits + t * 61, 61, &s, history, q->prompt_length + t, item->tokens[t], kept);
            TT_CHECK_NEAR(item->sampled_logprobs[t], want, 2e-5);
            TT_CHECK(item->sampled_logprobs[t] >= item->logprobs[t] - 1e-5f || s.repetition_penalty != 1);
            for (k = 0; k < 61; k++) { n_kept += kept[k]; }
            TT_CHECK_INT(n, n_kept == 61 ? 0 : n_kept);
            for (k = 0; k < n; k++) { TT_CHECK(kept[ids[k]] && (k == 0 || ids[k] > ids[k - 1])); }
            restricted += n > 0;
        }
    }
    TT_CHECK(restricted > 20 || (s.top_k == 0 && s.top_p == 0 && s.min_p <= 0));
    tt_completions_free(&c);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

TT_TEST(both_log_probs_are_kept_of_the_model_and_of_what_was_sampled_from) {
    tt_sampling s = usual();
    check_sampled_from(s);
    s.top_k = 5;
    check_sampled_from(s);
    s.top_p = 0.7f;
    check_sampled_from(s);
    s.top_k = 0;
    s.min_p = 0.3f;
    check_sampled_from(s);
    s.repetition_penalty = 1.3f;
    check_sampled_from(s);
    s.top_p = s.min_p = 0;
    check_sampled_from(s);
}

/* Alike where nothing restricts; 0 where nothing is drawn. */
TT_TEST(without_controls_the_two_log_probs_have_the_same_bits) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_sampling s = usual();
    tt_completions c;
    int i, t;
    requests_of(r);
    TT_REQUIRE(tt_generate(m, r, 3, &s, &c) == TT_OK);
    for (i = 0; i < c.n; i++) {
        TT_CHECK_BYTES(c.items[i].logprobs, c.items[i].sampled_logprobs, (size_t)c.items[i].length * sizeof(float));
        TT_CHECK(c.items[i].kept.at == NULL);
    }
    tt_completions_free(&c);
    s.greedy = 1;
    TT_REQUIRE(tt_generate(m, r, 3, &s, &c) == TT_OK);
    for (i = 0; i < c.n; i++) {
        for (t = 0; t < c.items[i].length; t++) { TT_CHECK(c.items[i].sampled_logprobs[t] == 0 && c.items[i].logprobs[t] < 0); }
    }
    tt_completions_free(&c);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

/* With the mask training renormalises as the sampler has: p_old / p_sampler is 1 by bits; without, it is the kept mass. */
TT_TEST(training_over_the_kept_sets_has_the_bits_of_sampling) {
    if (TT_TEST_DEVICE) { TT_SKIP("kept sets are read by the CPU's backend alone"); }
    static const char *const kernels[2] = {NULL, "portable"};
    int k, keep, i, t;
    for (k = 0; k < 4; k++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_model *m;
        tt_request r[3];
        tt_sampling s = usual();
        tt_completions c;
        tt_rollouts all;
        tt_scoring scoring = TT_INIT;
        static float got[12 * 70];
        double worst = 0;
        int at = 0;
        keep = k % 2;
        desc.kernel = kernels[k / 2];
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        m = small_model(ctx, 0);
        requests_of(r);
        for (i = 0; i < 3; i++) { r[i].n = 4; }
        s.top_p = 0.8f;
        s.keep_sampling_mask = keep;
        TT_REQUIRE(tt_generate(m, r, 3, &s, &c) == TT_OK && tt_rollouts_create(ctx, r, 3, &c, 11, &all) == TT_OK);
        scoring.model = m;
        scoring.temperature = s.temperature;
        scoring.micro_batch_tokens = 200;
        TT_CHECK_OK(ctx, tt_rollouts_logprobs(&all, &scoring, got, NULL));
        for (i = 0; i < all.n; at += all.items[i++].response_length) {
            const tt_rollout *q = &all.items[i];
            if (keep) { TT_CHECK_BYTES(got + at, q->sampling_logprobs, (size_t)q->response_length * sizeof(float)); }
            for (t = 0; t < q->response_length && !keep; t++) {
                double ratio = exp((double)got[at + t] - (double)q->sampling_logprobs[t]);
                TT_CHECK(ratio > 0.79 && ratio < 1.0001);      /* the mass that top-p has kept */
                worst = 1 - ratio > worst ? 1 - ratio : worst;
            }
        }
        TT_CHECK(keep || worst > 0.05);
        tt_rollouts_free(&all);
        tt_completions_free(&c);
        tt_model_destroy(m);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}

/* d log-prob over a kept set, by every kind of parameter. */
TT_TEST(the_gradient_over_a_kept_set_is_that_of_its_log_prob) {
    if (TT_TEST_DEVICE) { TT_SKIP("kept sets are read by the CPU's backend alone"); }
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    tt_request r[3];
    tt_sampling s = usual();
    tt_completions c;
    tt_rollouts all;
    int i, k, checked = 0;
    requests_of(r);
    s.top_k = 7;
    s.keep_sampling_mask = 1;
    s.max_new_tokens = 12;
    for (i = 0; i < 3; i++) { r[i].n = 1; }
    TT_REQUIRE(tt_generate(m, r, 3, &s, &c) == TT_OK && tt_rollouts_create(ctx, r, 3, &c, 11, &all) == TT_OK);
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *p = tt_model_param(m, i);
        float *values = (float *)malloc(p->size * sizeof(float)), *gradient = (float *)malloc(p->size * sizeof(float));
        size_t largest = 0, j;
        double sums[2];
        TT_REQUIRE(values && gradient);
        tt_model_zero_grad(m);
        TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_model_logprobs(m, tt_rollouts_batch(ctx, &all, NULL, 0), s.temperature, NULL))));
        TT_CHECK_OK(ctx, tt_tensor_get_grad(p, gradient));
        TT_CHECK_OK(ctx, tt_tensor_get(p, values));
        tt_step_reset(ctx);
        for (j = 0; j < p->size; j++) { if (fabs((double)gradient[j]) > fabs((double)gradient[largest])) { largest = j; } }
        for (k = 0; k < 2; k++) {
            float was = values[largest];
            values[largest] += k ? 2e-3f : -2e-3f;
            TT_CHECK_OK(ctx, tt_tensor_set(p, values));
            values[largest] = was;
            sums[k] = tt_item(tt_sum(ctx, tt_model_logprobs(m, tt_rollouts_batch(ctx, &all, NULL, 0), s.temperature, NULL)));
            tt_step_reset(ctx);
        }
        TT_CHECK_OK(ctx, tt_tensor_set(p, values));
        TT_CHECK_NEAR((sums[1] - sums[0]) / 4e-3 / (double)gradient[largest], 1, 0.03);
        checked++;
        free(values);
        free(gradient);
    }
    TT_CHECK(checked > 10);
    tt_rollouts_free(&all);
    tt_completions_free(&c);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

/* ---- an environment's turn: after each token below 8 it writes 40 and that token plus 20 ---- */
typedef struct world { int calls, bad; tt_status fails; tt_model *judge; } world;

/* A judge makes steps of its own meanwhile: a large tensor, and what the model would say. */
static void judge_steps(tt_model *m, const tt_request *request) {
    tt_context *ctx = tt_model_context(m);
    tt_sampling s = TT_INIT;
    tt_completions c;
    int size = 500000;
    TT_CHECK(tt_zeros(ctx, 1, &size) != NULL);
    tt_step_reset(ctx);
    s.max_new_tokens = 9;
    TT_CHECK_OK(ctx, tt_generate(m, request, 1, &s, &c));
    tt_completions_free(&c);
    TT_CHECK(tt_zeros(ctx, 1, &size) != NULL);
    tt_step_reset(ctx);
}

static tt_status world_turn(void *user, const tt_request *request, const int32_t *response, int length, tt_ids *out) {
    world *w = (world *)user;
    int32_t last = response[length - 1], says[2];
    w->calls++;
    if (w->judge) { judge_steps(w->judge, request); }
    if (w->fails != TT_OK && w->calls == 9) { return w->fails; }
    if (request->prompt_length < 1 || last >= 8) { return TT_OK; }
    says[0] = 40;
    says[1] = w->bad ? 61 : last + 20;
    return tt_ids_append(out, says, 2);
}

TT_TEST(an_environment_writes_and_the_response_goes_on) {
    static const int batches[4] = {0, 1, 3, 3};
    tt_completions first = TT_INIT;
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 0);
    world w;
    int k, i, t, turns = 0, cut = 0;
    for (k = 0; k < 4; k++) {
        tt_request r[3];
        tt_sampling s = usual();
        tt_completions c;
        requests_of(r);
        memset(&w, 0, sizeof w);
        w.judge = k == 3 ? m : NULL;
        s.max_batch = batches[k];
        s.environment = world_turn;
        s.environment_user = &w;
        TT_REQUIRE(TT_CHECK_OK(ctx, tt_generate(m, r, 3, &s, &c)));
        for (i = 0; i < c.n; i++) {
            const tt_completion *item = &c.items[i];
            float again[128];
            training_logprobs(m, &r[item->request], item, s.temperature, again);
            for (t = 0; t < item->length; t++) {
                int writes = t > 0 && item->tokens[t - 1] < 8 && !isnan(item->logprobs[t - 1]);
                int second = t > 1 && item->tokens[t - 2] < 8 && !isnan(item->logprobs[t - 2]);
                if (writes) { TT_CHECK(item->tokens[t] == 40 && isnan(item->logprobs[t]) && isnan(item->sampled_logprobs[t])); }
                else if (second) { TT_CHECK(item->tokens[t] == item->tokens[t - 2] + 20 && isnan(item->logprobs[t])); }
                else { TT_CHECK(item->logprobs[t] == again[t]); }
                turns += writes;
            }
            TT_CHECK(item->length <= s.max_new_tokens && item->stopped == (!isnan(item->logprobs[item->length - 1]) &&
                     (item->tokens[item->length - 1] == 11 || item->tokens[item->length - 1] == 12)));
            cut += !item->stopped;
            if (k > 0) { same_completions(&first.items[i], item); }
        }
        if (k == 0) { first = c; } else { tt_completions_free(&c); }
    }
    TT_CHECK(turns > 50 && cut > 0);
    w.judge = NULL;
    {   /* its tokens have their kind, and no loss */
        tt_rollouts all;
        tt_request r[3];
        tt_grpo_config config = TT_INIT;
        double in_loss = 0, sampled = 0;
        requests_of(r);
        r[0].n = r[1].n = r[2].n = 4;
        tt_completions_free(&first);
        {
            tt_sampling s = usual();
            s.environment = world_turn;
            s.environment_user = &w;
            TT_REQUIRE(tt_generate(m, r, 3, &s, &first) == TT_OK && tt_rollouts_create(ctx, r, 3, &first, 11, &all) == TT_OK);
        }
        for (i = 0; i < all.n; i++) {
            for (t = 0; t < all.items[i].response_length; t++) {
                int own = !isnan(first.items[i].logprobs[t]);
                TT_CHECK_INT(all.items[i].kind[all.items[i].prompt_length + t], own ? TT_KIND_STUDENT : TT_KIND_ENVIRONMENT);
                sampled += own;
            }
        }
        in_loss = tt_grpo_totals(&all, &config).tokens;
        TT_CHECK_NEAR(in_loss, sampled, 0);
        tt_rollouts_free(&all);
    }
    tt_completions_free(&first);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

TT_TEST(what_an_environment_does_wrong_is_named) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model *m;
    tt_request r[3];
    tt_sampling s = usual();
    tt_completions c;
    world w;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    m = small_model(ctx, 0);
    requests_of(r);
    memset(&w, 0, sizeof w);
    w.bad = 1;
    s.keep_sampling_mask = 1;
    s.top_k = 9;
    s.environment = world_turn;
    s.environment_user = &w;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "wrote token 61, expected 0..60");
    w.bad = w.calls = 0;
    w.fails = TT_ERR_IO;
    TT_CHECK_INT(tt_generate(m, r, 3, &s, &c), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "the environment of request");
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
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
            tt_model *m = small_model(ctx, 0);
            tt_status status = TT_ERR_MEM;
            tt_request r[TAILS];
            int32_t prompts[TAILS][COMMON + 4];
            tt_sampling s = usual();
            tt_completions c;
            world w = {0, 0, TT_OK, NULL};
            alike_requests(r, prompts, 37);
            s.max_new_tokens = 6;
            s.max_batch = 4;
            s.top_k = 9;
            s.keep_sampling_mask = 1;
            s.environment = world_turn;
            s.environment_user = &w;
            if (m) {
                status = tt_generate(m, r, TAILS, &s, &c);
                tt_completions_free(&c);
            }
            done = status == TT_OK && memory.calls < n;
            TT_CHECK(done || status == TT_ERR_MEM);
            tt_model_destroy(m);
            tt_destroy(ctx);
        }
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(done && n > 20);
}

TT_MAIN(sampling_logprobs_are_training_logprobs, neighbours_slots_and_threads_change_nothing, prompts_share_what_they_begin_with,
        generating_again_takes_the_memory_that_is_there,
        cached_decoding_equals_the_full_forward,
        controls_give_the_renormalised_distribution, controls_keep_what_the_warpers_of_transformers_keep,
        equal_tokens_share_their_fate_in_top_k_and_give_way_by_id_in_top_p, extreme_settings_work_or_are_named, greedy_takes_the_most_likely, streaming_and_errors,
        both_log_probs_are_kept_of_the_model_and_of_what_was_sampled_from, without_controls_the_two_log_probs_have_the_same_bits,
        training_over_the_kept_sets_has_the_bits_of_sampling, the_gradient_over_a_kept_set_is_that_of_its_log_prob,
        an_environment_writes_and_the_response_goes_on, what_an_environment_does_wrong_is_named,
        every_failing_allocation_is_an_error)
