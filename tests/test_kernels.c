/* Chapter 2: every kernel set that this CPU runs, against naive references in double; and the promises about bits. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

static const char *const all_kernels[] = {"portable", "avx2", "avx512", "neon", "simd128"};

static const char *const all_matmuls[] = {"f32", "bf16", "dot-bf16"};
enum { N_MATMULS = sizeof all_matmuls / sizeof all_matmuls[0] };
static const char *matmul = "f32";
static int rounded(void) { return strcmp(matmul, "f32") != 0; }      /* factors of products are rounded to bf16 */
/* A context with that kernel set and those products, or NULL if this CPU has them not. */
static tt_context *context_of(const char *kernel, int n_threads) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.kernel = kernel;
    desc.matmul = matmul;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    if (ctx && tt_error_status(ctx) == TT_ERR_ARG) { tt_destroy(ctx); return NULL; }
    return ctx;
}
/* Runs a check with every kernel set. */
static void with_each(void (*check)(tt_context *ctx)) {
    size_t i;
    for (i = 0; i < sizeof all_kernels / sizeof all_kernels[0]; i++) {
        tt_context *ctx = context_of(all_kernels[i], 1);
        int before = tt_test_now()->failures;
        if (!ctx) { continue; }
        TT_CHECK(strncmp(tt_kernel(ctx), all_kernels[i], strlen(all_kernels[i])) == 0 && !rounded() == !strstr(tt_kernel(ctx), "bf16"));
        check(ctx);
        if (tt_test_now()->failures > before) { printf("  with kernel %s\n", tt_kernel(ctx)); }
        TT_CHECK_INT(tt_error_status(ctx), TT_OK);
        tt_destroy(ctx);
    }
}
static void with_each_rounded(void (*check)(tt_context *ctx)) {
    size_t i;
    for (i = 1; i < N_MATMULS; i++) {
        matmul = all_matmuls[i];
        with_each(check);
    }
    matmul = "f32";
}
/* Memory of one check: bump from a static block. */
static float pool[1 << 21];
static size_t pool_used;
static float *room(size_t n) {
    float *p = pool + pool_used;
    pool_used += n + 3;                 /* odd, so that nothing is aligned by luck */
    if (pool_used > sizeof pool / sizeof pool[0]) { printf("pool too small\n"); exit(1); }
    return p;
}
/* n normals of a seed; the seed's stream is drawn once and kept, since drawing takes longer than most products. */
static float *noise(size_t n, uint64_t seed, float scale) {
    static struct { tt_rng rng; float *values; size_t n; } streams[100];
    float *p = room(n);
    size_t i;
    if (seed >= sizeof streams / sizeof streams[0]) { printf("seed too large\n"); exit(1); }
    if (n > streams[seed].n) {
        streams[seed].values = (float *)realloc(streams[seed].values, n * sizeof(float));
        if (!streams[seed].values) { printf("out of memory\n"); exit(1); }
        streams[seed].rng.seed = seed;
    }
    for (; streams[seed].n < n; streams[seed].n++) {
        streams[seed].values[streams[seed].n] = (float)tt_rng_normal(&streams[seed].rng);
    }
    for (i = 0; i < n; i++) { p[i] = scale * streams[seed].values[i]; }
    return p;
}
static float *same(const float *x, size_t n) {
    float *p = room(n);
    memcpy(p, x, n * sizeof *p);
    return p;
}
static float *zeros(size_t n) {
    float *p = room(n);
    memset(p, 0, n * sizeof *p);
    return p;
}
static double worst(const float *x, const double *y, size_t n) {
    double most = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        double gap = fabs((double)x[i] - y[i]) / (1.0 + fabs(y[i]));
        if (!(gap <= most)) { most = gap; }
    }
    return most;
}
#define CHECK_CLOSE(x, y, n, tolerance) TT_CHECK_NEAR(worst(x, y, n), 0.0, tolerance)
#define CHECK_SAME(x, y, n) TT_CHECK_BYTES(x, y, (n) * sizeof(float))

static double wide[1 << 20];            /* reference results */

/* ---- gemm ---- */
static tt_gemm_args gemm_args(int m, int n, int k, int ta, int tb, const float *a, const float *b, float *c) {
    tt_gemm_args g = TT_INIT;
    g.m = m;
    g.n = n;
    g.k = k;
    g.transpose_a = ta;
    g.transpose_b = tb;
    g.lda = (ta ? m : k) + 1;
    g.ldb = (tb ? k : n) + 2;
    g.ldc = n + 3;
    g.a = a;
    g.b = b;
    g.c = c;
    return g;
}
static size_t gemm_a_size(const tt_gemm_args *g) { return (size_t)((g->transpose_a ? g->k : g->m) * g->lda + 1); }
static size_t gemm_b_size(const tt_gemm_args *g) { return (size_t)((g->transpose_b ? g->n : g->k) * g->ldb + 1); }
static double factor(float x) { return (double)(rounded() ? tti_from_bf16(tti_to_bf16(x)) : x); }
static void gemm_naive(const tt_gemm_args *g, const float *c_before, double *out) {
    int i, j, p;
    for (i = 0; i < g->m; i++) {
        for (j = 0; j < g->n; j++) {
            double sum = g->accumulate ? (double)c_before[i * g->ldc + j] : g->bias ? (double)g->bias[j] : 0.0;
            for (p = 0; p < g->k; p++) {
                sum += factor(g->a[g->transpose_a ? p * g->lda + i : i * g->lda + p]) * factor(g->b[g->transpose_b ? j * g->ldb + p : p * g->ldb + j]);
            }
            out[i * g->ldc + j] = sum;
        }
    }
}
static void gemm_one(tt_context *ctx, int m, int n, int k, int ta, int tb, int mode) {
    tt_gemm_args g;
    float *c, *before;
    size_t size, i;
    int r;
    pool_used = 0;
    g = gemm_args(m, n, k, ta, tb, NULL, NULL, NULL);
    g.a = noise(gemm_a_size(&g), 1, 1.0f);
    g.b = noise(gemm_b_size(&g), 2, 1.0f);
    size = (size_t)m * (size_t)g.ldc;
    g.c = c = noise(size, 3, 1.0f);
    before = same(c, size);
    g.accumulate = mode == 1;
    g.bias = mode == 2 ? noise((size_t)n, 4, 1.0f) : NULL;
    for (i = 0; i < size; i++) { wide[i] = (double)before[i]; }
    gemm_naive(&g, before, wide);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
    if (worst(c, wide, size) > 5e-5) { printf("  m %d n %d k %d ta %d tb %d mode %d\n", m, n, k, ta, tb, mode); }
    CHECK_CLOSE(c, wide, size, 5e-5);
    for (r = 0; r < m; r++) { CHECK_SAME(c + r * g.ldc + n, before + r * g.ldc + n, 3); }      /* nothing written beside C */
}
/* The short run tries a third of the kinds with each shape, and another third with the next. */
static int is_tried(size_t shape, int kind) { return tt_test_exhaustive() || (shape + (size_t)kind) % 3 == 0; }
static void check_gemm(tt_context *ctx) {
    static const int shapes[][3] = {{1, 1, 1}, {1, 33, 7}, {3, 5, 2}, {13, 35, 17}, {37, 70, 41}, {97, 49, 300}, {200, 13, 5}, {5, 1200, 9}, {111, 1161, 3}, {4, 9, 0},
                                    {130, 40, 511}, {20, 70, 1023}, {96, 33, 64}};
    size_t s;
    int kind;
    for (s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (kind = 0; kind < 12; kind++) {
            if (!is_tried(s, kind)) { continue; }
            gemm_one(ctx, shapes[s][0], shapes[s][1], shapes[s][2], kind & 1, (kind >> 1) & 1, kind / 4);
        }
    }
}
TT_TEST(gemm_matches_reference) { with_each(check_gemm); }
TT_TEST(gemm_of_rounded_factors_matches_reference) { with_each_rounded(check_gemm); }

/* B in bf16 gives the bits of B widened. */
static void check_gemm_half(tt_context *ctx) {
    static const int shapes[][3] = {{1, 33, 7}, {3, 64, 64}, {13, 35, 41}, {37, 70, 530}, {130, 97, 77}, {200, 1200, 34}};
    static uint16_t half[1 << 20];
    size_t s, i;
    int kind;
    for (s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (kind = 0; kind < 4; kind++) {
            tt_gemm_args g, h;
            size_t size, n;
            float *b;
            pool_used = 0;
            g = gemm_args(shapes[s][0], shapes[s][1], shapes[s][2], kind & 1, kind >> 1, NULL, NULL, NULL);
            g.ldb -= s % 2 ? 0 : 1;                    /* even and odd strides */
            g.a = noise(gemm_a_size(&g), 1, 1.0f);
            n = gemm_b_size(&g);
            b = noise(n, 2, 1.0f);
            for (i = 0; i < n; i++) { half[i] = tti_to_bf16(b[i]); b[i] = tti_from_bf16(half[i]); }
            size = (size_t)g.m * (size_t)g.ldc;
            h = g;
            g.b = b;
            g.c = zeros(size);
            h.half_b = half;
            h.c = zeros(size);
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            CHECK_SAME(g.c, h.c, size);
        }
    }
}
TT_TEST(gemm_of_half_is_that_of_widened) { with_each(check_gemm_half); with_each_rounded(check_gemm_half); }

/* B's panels give the bits of B: one, two and more rows, several panels and the rest of one, begun from C or a bias. */
static void check_panels(tt_context *ctx, tt_gemm_args g, const uint16_t *half) {
    size_t size = (size_t)g.m * (size_t)g.ldc, bytes;
    tt_gemm_args h = g;
    float *begin = noise(size, 3, 1.0f);
    g.c = same(begin, size);
    h.c = same(begin, size);
    if (half) { h.b = NULL; }
    h.half_b = half;
    bytes = tt_backend_get(ctx)->gemm_panels(ctx, &h, NULL);
    h.panels = room(bytes / sizeof(float) + 1);
    memset((void *)(uintptr_t)h.panels, 0xFF, bytes);
    TT_CHECK_INT(tt_backend_get(ctx)->gemm_panels(ctx, &h, (void *)(uintptr_t)h.panels), bytes);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
    CHECK_SAME(g.c, h.c, size);
}
static void check_gemm_panels(tt_context *ctx) {
    static const int shapes[][3] = {{1, 33, 7}, {1, 300, 64}, {2, 300, 802}, {3, 161, 770}, {13, 35, 41}, {37, 70, 530}, {40, 33, 400}, {130, 97, 78}, {200, 1200, 34}};
    static uint16_t half[1 << 20];
    size_t s, n, i;
    int kind;
    for (s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (kind = 0; kind < 12; kind++) {
            tt_gemm_args g;
            float *b;
            if (!is_tried(s, kind)) { continue; }
            pool_used = 0;
            g = gemm_args(shapes[s][0], shapes[s][1], shapes[s][2], kind & 1, (kind >> 1) & 1, NULL, NULL, NULL);
            g.ldb -= g.ldb % 2;                        /* bf16 in pairs, where k is even too */
            g.a = noise(gemm_a_size(&g), 1, 1.0f);
            g.bias = kind / 4 == 1 ? noise((size_t)g.n, 4, 1.0f) : NULL;
            g.accumulate = kind / 4 == 2;
            n = gemm_b_size(&g);
            g.b = b = noise(n, 2, 1.0f);
            check_panels(ctx, g, NULL);
            for (i = 0; i < n; i++) { half[i] = tti_to_bf16(b[i]); b[i] = tti_from_bf16(half[i]); }
            check_panels(ctx, g, half);
        }
    }
}
TT_TEST(gemm_of_panels_keeps_its_bits) { with_each(check_gemm_panels); with_each_rounded(check_gemm_panels); }

/* An activation in the same pass gives the bits of one that comes after, beside C and in its place. */
static void check_gemm_activation(tt_context *ctx) {
    static const int shapes[][3] = {{1, 300, 64}, {2, 300, 802}, {13, 35, 41}, {40, 33, 400}, {130, 97, 778}, {200, 1200, 34}, {5, 40, 0}};
    static const tt_unary ops[] = {TT_NEG, TT_EXP, TT_TANH, TT_GELU_TANH, TT_GELU_ERF};
    size_t s, size, bytes;
    int kind, r;
    for (s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (kind = 0; kind < 20; kind++) {
            tt_gemm_args g, h;
            float *begin, *apart;
            if (!is_tried(s, kind)) { continue; }
            pool_used = 0;
            g = gemm_args(shapes[s][0], shapes[s][1], shapes[s][2], kind & 1, (kind >> 1) & 1, NULL, NULL, NULL);
            size = (size_t)g.m * (size_t)g.ldc;
            g.a = noise(gemm_a_size(&g), 1, 0.2f);
            g.b = noise(gemm_b_size(&g), 2, 0.2f);
            g.bias = kind / 4 % 3 == 1 ? noise((size_t)g.n, 4, 1.0f) : NULL;
            g.accumulate = kind / 4 % 3 == 2;
            if (kind % 2) {
                bytes = tt_backend_get(ctx)->gemm_panels(ctx, &g, NULL);
                g.panels = room(bytes / sizeof(float) + 1);
                tt_backend_get(ctx)->gemm_panels(ctx, &g, (void *)(uintptr_t)g.panels);
            }
            begin = noise(size, 3, 1.0f);
            g.c = same(begin, size);
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
            apart = same(begin, size);
            for (r = 0; r < g.m; r++) {
                TT_CHECK_OK(ctx, tt_backend_get(ctx)->unary(ctx, ops[kind / 4], apart + r * g.ldc, g.c + r * g.ldc, (size_t)g.n, 0, 0));
            }
            h = g;
            h.c = same(begin, size);
            h.y = same(begin, size);
            h.activation = ops[kind / 4];
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            CHECK_SAME(g.c, h.c, size);
            CHECK_SAME(apart, h.y, size);
            h.c = h.y = same(begin, size);
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            CHECK_SAME(apart, h.c, size);
        }
    }
}
TT_TEST(gemm_activates_in_the_same_pass) { with_each(check_gemm_activation); with_each_rounded(check_gemm_activation); }

/* Row i of a product is the same alone, and a product split along k and continued is the same as in one go. */
static void check_gemm_bits(tt_context *ctx) {
    int m = 137, n = 75, k = 533, cut = rounded() ? 96 : 101, i, ta, tb;
    for (ta = 0; ta < 2; ta++) {
        for (tb = 0; tb < 2; tb++) {
            tt_gemm_args g, h;
            size_t size = (size_t)m * (size_t)(n + 3);
            float *whole, *part;
            pool_used = 0;
            g = gemm_args(m, n, k, ta, tb, NULL, NULL, NULL);
            g.a = noise(gemm_a_size(&g), 1, 1.0f);
            g.b = noise(gemm_b_size(&g), 2, 1.0f);
            g.bias = noise((size_t)n, 3, 1.0f);
            g.c = whole = zeros(size);
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
            h = g;
            h.c = part = zeros(size);
            for (i = 0; i < m; i += h.m) {
                h.m = i == 0 ? 1 : m - i < 17 ? m - i : i % 17 + 1;
                h.a = g.a + (ta ? i : i * g.lda);
                h.c = part + i * g.ldc;
                TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            }
            CHECK_SAME(whole, part, size);
            h = g;
            h.c = part = zeros(size);
            h.k = cut;
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            h.k = k - cut;
            h.a = g.a + (ta ? cut * g.lda : cut);
            h.b = g.b + (tb ? cut : cut * g.ldb);
            h.accumulate = 1;
            TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &h));
            CHECK_SAME(whole, part, size);
        }
    }
}
TT_TEST(gemm_keeps_its_bits) { with_each(check_gemm_bits); with_each_rounded(check_gemm_bits); }

/* ---- attention ---- */
#define HEADS 6
#define KV 2
#define TOKENS 231
static const int32_t offsets[] = {0, 1, 8, 8, 208, 231};
#define SEQUENCES 5
static tt_attention_args attention_args(int dim) {
    tt_attention_args a = TT_INIT;
    size_t nq = (size_t)(TOKENS * HEADS * dim), nk = (size_t)(TOKENS * KV * dim);
    a.n_sequences = SEQUENCES;
    a.n_tokens = TOKENS;
    a.n_heads = HEADS;
    a.n_kv_heads = KV;
    a.head_dim = dim;
    a.scale = 0.3f;
    a.offsets = a.host_offsets = offsets;
    a.q = noise(nq, 11, 1.5f);
    a.k = noise(nk, 12, 1.5f);
    a.v = noise(nk, 13, 1.0f);
    a.out = zeros(nq);
    a.lse = zeros((size_t)(TOKENS * HEADS));
    return a;
}
/* Forward and, if a->dout, backward; one row of the score matrix at a time. */
static void attention_naive(const tt_attention_args *a, double *out, double *dq, double *dk, double *dv) {
    int s, t, h, j, d, dim = a->head_dim;
    double p[TOKENS], dp[TOKENS];
    for (s = 0; s < a->n_sequences; s++) {
        for (t = offsets[s]; t < offsets[s + 1]; t++) {
            for (h = 0; h < HEADS; h++) {
                const float *q = a->q + (t * HEADS + h) * dim, *g = a->dout ? a->dout + (t * HEADS + h) * dim : NULL;
                double sum = 0, delta = 0, *o = out + (t * HEADS + h) * dim;
                for (j = offsets[s]; j <= t; j++) {
                    const float *k = a->k + (j * KV + h / (HEADS / KV)) * dim;
                    p[j] = 0;
                    for (d = 0; d < dim; d++) { p[j] += (double)q[d] * (double)k[d]; }
                    p[j] = exp((double)a->scale * p[j]);
                    sum += p[j];
                }
                for (d = 0; d < dim; d++) { o[d] = 0; }
                for (j = offsets[s]; j <= t; j++) {
                    const float *v = a->v + (j * KV + h / (HEADS / KV)) * dim;
                    p[j] /= sum;
                    dp[j] = 0;
                    for (d = 0; d < dim; d++) {
                        o[d] += p[j] * (double)v[d];
                        if (g) { dp[j] += (double)g[d] * (double)v[d]; }
                    }
                    delta += p[j] * dp[j];
                }
                for (j = offsets[s]; g && j <= t; j++) {
                    int at = (j * KV + h / (HEADS / KV)) * dim;
                    double ds = (double)a->scale * p[j] * (dp[j] - delta);
                    for (d = 0; d < dim; d++) {
                        dq[(t * HEADS + h) * dim + d] += ds * (double)a->k[at + d];
                        dk[at + d] += ds * (double)q[d];
                        dv[at + d] += p[j] * (double)g[d];
                    }
                }
            }
        }
    }
}
static void check_attention_dim(tt_context *ctx, int dim) {
    size_t nq = (size_t)(TOKENS * HEADS * dim), nk = (size_t)(TOKENS * KV * dim), i;
    double *out = wide, *dq = out + nq, *dk = dq + nq, *dv = dk + nk;
    tt_attention_args a;
    pool_used = 0;
    a = attention_args(dim);
    a.dout = noise(nq, 14, 1.0f);
    a.dq = noise(nq, 15, 1.0f);
    a.dk = noise(nk, 16, 1.0f);
    a.dv = noise(nk, 17, 1.0f);
    for (i = 0; i < nq; i++) { dq[i] = (double)a.dq[i]; }
    for (i = 0; i < nk; i++) { dk[i] = (double)a.dk[i]; dv[i] = (double)a.dv[i]; }
    attention_naive(&a, out, dq, dk, dv);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->attention_forward(ctx, &a));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->attention_backward(ctx, &a));
    CHECK_CLOSE(a.out, out, nq, 1e-5);
    CHECK_CLOSE(a.dq, dq, nq, 3e-5);
    CHECK_CLOSE(a.dk, dk, nk, 3e-5);
    CHECK_CLOSE(a.dv, dv, nk, 3e-5);
}
static void check_attention(tt_context *ctx) {
    check_attention_dim(ctx, 24);
    check_attention_dim(ctx, 7);
    check_attention_dim(ctx, 64);
}
TT_TEST(attention_matches_reference) { with_each(check_attention); }

/* Each token decoded alone against cache rows gives the bits of the packed prefill, even where later rows of the
 * cache hold NaN; so do chunks of several tokens. */
static void check_decode(tt_context *ctx) {
    const int dim = 24, capacity = 210, step[] = {1, 5};
    const size_t kv_row = (size_t)(KV * dim), q_row = (size_t)(HEADS * dim);
    tt_attention_args a, b;
    float *keys, *values, *out;
    int s, t, c;
    size_t i;
    pool_used = 0;
    a = attention_args(dim);
    out = zeros(5 * q_row);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->attention_forward(ctx, &a));
    for (c = 0; c < 2; c++) {
        keys = room((size_t)capacity * kv_row);
        values = room((size_t)capacity * kv_row);
        for (s = 0; s < SEQUENCES; s++) {
            for (i = 0; i < (size_t)capacity * kv_row; i++) { keys[i] = values[i] = NAN; }
            for (t = offsets[s]; t < offsets[s + 1]; t += step[c]) {
                int32_t local[2], query_start, key_start = 2;
                int n = offsets[s + 1] - t < step[c] ? offsets[s + 1] - t : step[c];
                size_t at = (size_t)(key_start + t - offsets[s]) * kv_row;
                memcpy(keys + at, a.k + (size_t)t * kv_row, (size_t)n * kv_row * sizeof(float));
                memcpy(values + at, a.v + (size_t)t * kv_row, (size_t)n * kv_row * sizeof(float));
                local[0] = 0;
                local[1] = n;
                query_start = t - offsets[s];
                b = a;
                b.n_sequences = 1;
                b.n_tokens = n;
                b.offsets = b.host_offsets = local;
                b.query_start = &query_start;
                b.key_start = &key_start;
                b.q = a.q + (size_t)t * q_row;
                b.k = keys;
                b.v = values;
                b.out = out;
                b.lse = NULL;
                TT_CHECK_OK(ctx, tt_backend_get(ctx)->attention_forward(ctx, &b));
                CHECK_SAME(a.out + (size_t)t * q_row, b.out, (size_t)n * q_row);
            }
        }
    }
}
TT_TEST(decode_equals_prefill) { with_each(check_decode); }

/* ---- log-probs ---- */
#define LP_N 205
#define LP_DIM 20
#define LP_VOCAB 2501
static tt_logprobs_args logprobs_args(int32_t *targets) {
    tt_logprobs_args a = TT_INIT;
    int i;
    for (i = 0; i < LP_N; i++) { targets[i] = (i * 613) % LP_VOCAB; }
    targets[0] = 0;
    targets[1] = LP_VOCAB - 1;
    targets[2] = (int32_t)TTI_VOCAB_BLOCK - 1;
    targets[3] = (int32_t)TTI_VOCAB_BLOCK;
    a.n = LP_N;
    a.dim = LP_DIM;
    a.vocab = LP_VOCAB;
    a.inv_temperature = 1.25f;
    a.x = noise((size_t)(LP_N * LP_DIM), 21, 1.0f);
    a.w = noise((size_t)(LP_VOCAB * LP_DIM), 22, 0.8f);
    a.targets = targets;
    a.logprobs = zeros(LP_N);
    a.entropy = zeros(LP_N);
    a.lse = zeros(LP_N);
    return a;
}
static void check_logprobs(tt_context *ctx) {
    static double z[LP_VOCAB];
    double *logp = wide, *entropy = logp + LP_N, *dx = entropy + LP_N, *dw = dx + LP_N * LP_DIM;
    int32_t targets[LP_N];
    tt_logprobs_args a;
    int i, j, d;
    pool_used = 0;
    a = logprobs_args(targets);
    a.dlogprobs = noise(LP_N, 23, 1.0f);
    a.dentropy = noise(LP_N, 24, 1.0f);
    a.dx = noise((size_t)(LP_N * LP_DIM), 25, 1.0f);
    a.dw = noise((size_t)(LP_VOCAB * LP_DIM), 26, 1.0f);
    for (i = 0; i < LP_N * LP_DIM; i++) { dx[i] = (double)a.dx[i]; }
    for (i = 0; i < LP_VOCAB * LP_DIM; i++) { dw[i] = (double)a.dw[i]; }
    for (i = 0; i < LP_N; i++) {
        double sum = 0, h = 0;
        for (j = 0; j < LP_VOCAB; j++) {
            z[j] = 0;
            for (d = 0; d < LP_DIM; d++) { z[j] += (double)a.x[i * LP_DIM + d] * (double)a.w[j * LP_DIM + d]; }
            z[j] *= (double)a.inv_temperature;
            sum += exp(z[j]);
        }
        for (j = 0; j < LP_VOCAB; j++) { z[j] -= log(sum); h -= exp(z[j]) * z[j]; }
        logp[i] = z[targets[i]];
        entropy[i] = h;
        for (j = 0; j < LP_VOCAB; j++) {
            double p = exp(z[j]), dz = (double)a.inv_temperature * ((double)a.dlogprobs[i] * ((j == targets[i]) - p) - (double)a.dentropy[i] * p * (z[j] + h));
            for (d = 0; d < LP_DIM; d++) {
                dx[i * LP_DIM + d] += dz * (double)a.w[j * LP_DIM + d];
                dw[j * LP_DIM + d] += dz * (double)a.x[i * LP_DIM + d];
            }
        }
    }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_forward(ctx, &a));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_backward(ctx, &a));
    CHECK_CLOSE(a.logprobs, logp, LP_N, 3e-6);
    CHECK_CLOSE(a.entropy, entropy, LP_N, 5e-6);
    CHECK_CLOSE(a.dx, dx, (size_t)(LP_N * LP_DIM), 3e-5);
    CHECK_CLOSE(a.dw, dw, (size_t)(LP_VOCAB * LP_DIM), 3e-5);
}
TT_TEST(logprobs_match_reference) { with_each(check_logprobs); }

/* The sampler's value of one row, and micro-batches added up, are the whole batch's to the bit. */
static void check_logprobs_bits(tt_context *ctx) {
    int32_t targets[LP_N];
    tt_logprobs_args a, b;
    float *logits = room(LP_VOCAB), *dw, *dx, *logprobs, *entropy;
    int i;
    pool_used = LP_VOCAB + 3;
    a = logprobs_args(targets);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_forward(ctx, &a));
    for (i = 0; i < LP_N; i += 3) {
        tt_gemm_args g = TT_INIT;
        float logprob, h;
        g.m = 1;
        g.n = g.ldc = LP_VOCAB;
        g.k = g.lda = g.ldb = LP_DIM;
        g.transpose_b = 1;
        g.a = a.x + i * LP_DIM;
        g.b = a.w;
        g.c = logits;
        TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
        tti_row_logprob(ctx, logits, LP_VOCAB, targets[i], a.inv_temperature, &logprob, &h);
        CHECK_SAME(&logprob, a.logprobs + i, 1);
        CHECK_SAME(&h, a.entropy + i, 1);
    }
    a.dlogprobs = noise(LP_N, 23, 1.0f);
    a.dentropy = noise(LP_N, 24, 1.0f);
    dx = a.dx = zeros((size_t)(LP_N * LP_DIM));
    dw = a.dw = zeros((size_t)(LP_VOCAB * LP_DIM));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_backward(ctx, &a));
    logprobs = a.logprobs;
    entropy = a.entropy;
    a.dx = zeros((size_t)(LP_N * LP_DIM));
    a.dw = zeros((size_t)(LP_VOCAB * LP_DIM));
    a.logprobs = zeros(LP_N);
    a.entropy = zeros(LP_N);
    for (i = 0; i < LP_N; i += b.n) {
        b = a;
        b.n = LP_N - i < 50 ? LP_N - i : 50;
        b.x = a.x + i * LP_DIM;
        b.targets = targets + i;
        b.logprobs = a.logprobs + i;
        b.entropy = a.entropy + i;
        b.lse = a.lse + i;
        b.dlogprobs = a.dlogprobs + i;
        b.dentropy = a.dentropy + i;
        b.dx = a.dx + i * LP_DIM;
        TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_forward(ctx, &b));
        TT_CHECK_OK(ctx, tt_backend_get(ctx)->logprobs_backward(ctx, &b));
    }
    CHECK_SAME(logprobs, a.logprobs, LP_N);
    CHECK_SAME(entropy, a.entropy, LP_N);
    CHECK_SAME(dx, a.dx, (size_t)(LP_N * LP_DIM));
    CHECK_SAME(dw, a.dw, (size_t)(LP_VOCAB * LP_DIM));
}
TT_TEST(logprobs_keep_their_bits) { with_each(check_logprobs_bits); }

/* ---- norms and rope ---- */
static void norm_naive(int n, int dim, int centred, const float *x, const float *w, const float *b, const float *dy, float eps,
                       double *y, double *dx, double *dw, double *db) {
    int i, d;
    for (i = 0; i < n; i++) {
        double mean = 0, square = 0, r, sum = 0, dot = 0;
        for (d = 0; d < dim && centred; d++) { mean += (double)x[i * dim + d] / dim; }
        for (d = 0; d < dim; d++) { square += ((double)x[i * dim + d] - mean) * ((double)x[i * dim + d] - mean) / dim; }
        r = 1.0 / sqrt(square + (double)eps);
        for (d = 0; d < dim; d++) {
            double z = ((double)x[i * dim + d] - mean) * r, g = (double)dy[i * dim + d];
            y[i * dim + d] = z * (double)w[d] + (b ? (double)b[d] : 0.0);
            dw[d] += g * z;
            db[d] += g;
            sum += centred ? g * (double)w[d] / dim : 0.0;
            dot += g * (double)w[d] * z / dim;
        }
        for (d = 0; d < dim; d++) {
            double z = ((double)x[i * dim + d] - mean) * r;
            dx[i * dim + d] += r * ((double)dy[i * dim + d] * (double)w[d] - sum - z * dot);
        }
    }
}
static void check_norms(tt_context *ctx) {
    static const int dims[] = {1, 7, 16, 45, 96};
    const int n = 11;
    size_t c, i;
    int centred;
    for (c = 0; c < 10; c++) {
        int dim = dims[c / 2];
        size_t size = (size_t)(n * dim), width = (size_t)dim;
        double *ry = wide, *rdx = ry + size, *rdw = rdx + size, *rdb = rdw + width;
        float *x, *w, *b, *dy, *y, *dx, *dw, *db, *mean, *rstd;
        const tt_backend *k = tt_backend_get(ctx);
        centred = (int)(c % 2);
        if (centred && dim == 1) { continue; }
        pool_used = 0;
        x = noise(size, 31, 2.0f);
        w = noise(width, 32, 1.0f);
        b = noise(width, 33, 1.0f);
        dy = noise(size, 34, 1.0f);
        y = zeros(size);
        dx = noise(size, 35, 1.0f);
        dw = noise(width, 36, 1.0f);
        db = noise(width, 37, 1.0f);
        mean = zeros(n);
        rstd = zeros(n);
        for (i = 0; i < size; i++) { rdx[i] = (double)dx[i]; }
        for (i = 0; i < width; i++) { rdw[i] = (double)dw[i]; rdb[i] = (double)db[i]; }
        norm_naive(n, dim, centred, x, w, centred ? b : NULL, dy, 1e-5f, ry, rdx, rdw, rdb);
        if (centred) {
            TT_CHECK_OK(ctx, k->layernorm(ctx, y, mean, rstd, x, w, b, n, dim, 1e-5f));
            TT_CHECK_OK(ctx, k->layernorm_backward(ctx, dx, dw, db, dy, x, w, mean, rstd, n, dim));
            CHECK_CLOSE(db, rdb, width, 1e-5);
        } else {
            TT_CHECK_OK(ctx, k->rmsnorm(ctx, y, rstd, x, w, n, dim, 1e-5f));
            TT_CHECK_OK(ctx, k->rmsnorm_backward(ctx, dx, dw, dy, x, w, rstd, n, dim));
        }
        CHECK_CLOSE(y, ry, size, 1e-5);
        CHECK_CLOSE(dx, rdx, size, 2e-5);
        CHECK_CLOSE(dw, rdw, width, 2e-5);
    }
}
TT_TEST(norms_match_reference) { with_each(check_norms); }

static void check_rope(tt_context *ctx) {
    const int n = 5, heads = 3, dim = 26, half = 13;
    static const int32_t positions[] = {4, 0, 1, 3, 4};
    const size_t size = (size_t)(n * heads * dim);
    float *x, *y, *c, *s, *back;
    int i, h, d;
    pool_used = 0;
    x = noise(size, 41, 1.0f);
    c = noise((size_t)(5 * half), 42, 1.0f);
    s = noise((size_t)(5 * half), 43, 1.0f);
    y = zeros(size);
    for (i = 0; i < n; i++) {
        for (h = 0; h < heads; h++) {
            for (d = 0; d < half; d++) {
                int at = (i * heads + h) * dim + d, angle = positions[i] * half + d;
                float norm = sqrtf(c[angle] * c[angle] + s[angle] * s[angle]);
                if (h == 0 && (i < 4)) { c[angle] /= norm; s[angle] /= norm; }
                wide[at] = (double)x[at] * (double)c[angle] - (double)x[at + half] * (double)s[angle];
                wide[at + half] = (double)x[at + half] * (double)c[angle] + (double)x[at] * (double)s[angle];
            }
        }
    }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->rope(ctx, y, x, c, s, positions, n, heads, dim, 0));
    CHECK_CLOSE(y, wide, size, 1e-6);
    back = same(x, size);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->rope(ctx, back, y, c, s, positions, n, heads, dim, 1));
    for (i = 0; i < (int)size; i++) { wide[i] = 2.0 * (double)x[i]; }
    CHECK_CLOSE(back, wide, size, 1e-5);
}
TT_TEST(rope_turns_and_turns_back) { with_each(check_rope); }

/* ---- elementwise ---- */
static double unary_naive(tt_unary op, double x) {
    switch (op) {
    case TT_NEG: return -x;
    case TT_EXP: return exp(x);
    case TT_LOG: return log(x);
    case TT_TANH: return tanh(x);
    case TT_CLAMP: return x < 0.5 ? 0.5 : x > 1.5 ? 1.5 : x;
    case TT_SCALE: return 0.5 * x;
    case TT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    case TT_GELU_ERF: return 0.5 * x * erfc(-x / sqrt(2.0));
    }
    return 0;
}
static double binary_naive(tt_binary op, double a, double b) {
    switch (op) {
    case TT_ADD: return a + b;
    case TT_SUB: return a - b;
    case TT_MUL: return a * b;
    case TT_DIV: return a / b;
    case TT_MINIMUM: return a < b ? a : b;
    case TT_MAXIMUM: return a > b ? a : b;
    case TT_LESS: return a < b;
    case TT_SWIGLU: return a / (1 + exp(-a)) * b;
    }
    return 0;
}
/* Values against double, gradients against central differences. */
static void check_elementwise(tt_context *ctx) {
    const tt_backend *k = tt_backend_get(ctx);
    const size_t n = 53;
    const double h = 1e-6;
    int op;
    size_t i;
    for (op = TT_NEG; op <= TT_GELU_ERF; op++) {
        float *x, *y, *dy, *dx;
        double *ry = wide, *rdx = wide + n;
        pool_used = 0;
        x = noise(n, 51, 2.0f);
        dy = noise(n, 52, 1.0f);
        y = zeros(n);
        dx = noise(n, 53, 1.0f);
        for (i = 0; i < n; i++) {
            if (op == TT_LOG) { x[i] = fabsf(x[i]) + 0.1f; }
            ry[i] = unary_naive((tt_unary)op, (double)x[i]);
            rdx[i] = (double)dx[i] + (double)dy[i] * (unary_naive((tt_unary)op, (double)x[i] + h) - unary_naive((tt_unary)op, (double)x[i] - h)) / (2 * h);
        }
        TT_CHECK_OK(ctx, k->unary(ctx, (tt_unary)op, y, x, n, 0.5f, 1.5f));
        TT_CHECK_OK(ctx, k->unary_backward(ctx, (tt_unary)op, dx, dy, x, y, n, 0.5f, 1.5f));
        CHECK_CLOSE(y, ry, n, 2e-6);
        CHECK_CLOSE(dx, rdx, n, 1e-5);
    }
    for (op = TT_ADD; op <= TT_SWIGLU; op++) {
        float *a, *b, *y, *dy, *da, *db;
        double *ry = wide, *rda = wide + n, *rdb = rda + n;
        pool_used = 0;
        a = noise(n, 54, 2.0f);
        b = noise(n, 55, 1.0f);
        dy = noise(n, 56, 1.0f);
        y = zeros(n);
        da = noise(n, 57, 1.0f);
        db = noise(n, 58, 1.0f);
        for (i = 0; i < n; i++) {
            double u, v;
            if (op == TT_DIV) { b[i] = fabsf(b[i]) + 0.5f; }
            u = (double)a[i];
            v = (double)b[i];
            ry[i] = binary_naive((tt_binary)op, u, v);
            rda[i] = (double)da[i] + (double)dy[i] * (binary_naive((tt_binary)op, u + h, v) - binary_naive((tt_binary)op, u - h, v)) / (2 * h);
            rdb[i] = (double)db[i] + (double)dy[i] * (binary_naive((tt_binary)op, u, v + h) - binary_naive((tt_binary)op, u, v - h)) / (2 * h);
        }
        TT_CHECK_OK(ctx, k->binary(ctx, (tt_binary)op, y, a, b, n));
        TT_CHECK_OK(ctx, k->binary_backward(ctx, (tt_binary)op, da, NULL, dy, a, b, n));
        TT_CHECK_OK(ctx, k->binary_backward(ctx, (tt_binary)op, NULL, db, dy, a, b, n));
        CHECK_CLOSE(y, ry, n, 2e-6);
        CHECK_CLOSE(da, rda, n, 1e-5);
        CHECK_CLOSE(db, rdb, n, 1e-5);
    }
}
TT_TEST(elementwise_matches_reference) { with_each(check_elementwise); }

static void check_exp(tt_context *ctx) {
    static const float x[] = {0.0f, -0.0f, 1.0f, -1.0f, 88.7f, 88.8f, 1000.0f, -87.0f, -100.0f, -104.0f, -1e30f, 1e-8f, 0.34657f};
    float y[13], edges[3] = {NAN, -INFINITY, INFINITY};
    float z[3];
    size_t i;
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->unary(ctx, TT_EXP, y, x, 13, 0, 0));
    for (i = 0; i < 13; i++) {
        float expected = (float)exp((double)x[i]);
        TT_CHECK_NEAR(y[i], expected, isinf(expected) ? 0.0 : 2.5e-7 * (double)expected + 1e-44);
    }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->unary(ctx, TT_EXP, z, edges, 3, 0, 0));
    TT_CHECK(isnan(z[0]));
    TT_CHECK(z[1] == 0.0f);
    TT_CHECK(isinf(z[2]));
}
TT_TEST(exp_is_right_at_its_ends) { with_each(check_exp); }

/* ---- rows, shapes, sums ---- */
static void check_rows(tt_context *ctx) {
    const tt_backend *k = tt_backend_get(ctx);
    static const int32_t rows[] = {2, 0, 2, 3};
    static const int small_shape[] = {1, 2, 1, 3}, big_shape[] = {2, 2, 5, 3};
    const int dim = 19;
    float *x, *y, *g, condition[3] = {1, 0, -2}, a[3] = {1, 2, 3}, b[3] = {4, 5, 6}, out[3];
    double sum, expected = 0;
    int i, d;
    pool_used = 0;
    x = noise(4 * 19, 61, 1.0f);
    y = zeros(4 * 19);
    g = noise(4 * 19, 62, 1.0f);
    TT_CHECK_OK(ctx, k->gather_rows(ctx, y, x, rows, 4, dim));
    for (i = 0; i < 4; i++) { CHECK_SAME(y + i * dim, x + rows[i] * dim, (size_t)dim); }
    memset(y, 0, 4 * 19 * sizeof *y);
    TT_CHECK_OK(ctx, k->scatter_add_rows(ctx, y, g, rows, 4, dim));
    for (d = 0; d < dim; d++) {
        TT_CHECK(y[d] == g[dim + d] && y[dim + d] == 0.0f && y[2 * dim + d] == g[d] + g[2 * dim + d] && y[3 * dim + d] == g[3 * dim + d]);
    }
    TT_CHECK_OK(ctx, k->scatter_rows(ctx, y, x, rows + 1, 3, dim));
    CHECK_SAME(y, x, (size_t)dim);
    CHECK_SAME(y + 3 * dim, x + 2 * dim, (size_t)dim);
    TT_CHECK_OK(ctx, k->slice(ctx, y, x, 4, dim, 5, 3));
    TT_CHECK(y[0] == x[5] && y[11] == x[3 * dim + 7]);
    memset(g, 0, 4 * 19 * sizeof *g);
    TT_CHECK_OK(ctx, k->slice_backward(ctx, g, y, 4, dim, 5, 3));
    TT_CHECK(g[5] == x[5] && g[4] == 0 && g[8] == 0 && g[3 * dim + 7] == x[3 * dim + 7]);
    memset(g, 0, 4 * 19 * sizeof *g);
    TT_CHECK_OK(ctx, k->bias_backward(ctx, g, x, 4, dim));
    for (d = 0; d < dim; d++) { TT_CHECK(g[d] == ((x[d] + x[dim + d]) + x[2 * dim + d]) + x[3 * dim + d]); }
    TT_CHECK_OK(ctx, k->broadcast(ctx, y, x, small_shape, big_shape, 0));
    for (i = 0; i < 60; i++) { TT_CHECK(y[i] == x[i / 15 % 2 * 3 + i % 3]); }
    memset(g, 0, 4 * 19 * sizeof *g);
    g[4] = 1.0f;
    TT_CHECK_OK(ctx, k->reduce(ctx, g, y, small_shape, big_shape, 1));
    TT_CHECK_NEAR(g[4], 1.0 + 10.0 * (double)x[4], 1e-5);
    TT_CHECK_NEAR(g[0], 10.0 * (double)x[0], 1e-5);
    for (i = 0; i < 76; i++) { expected += (double)x[i] * (double)x[i]; }
    TT_CHECK_OK(ctx, k->sum_squares(ctx, x, 76, &sum));
    TT_CHECK_NEAR(sum, expected, 1e-12);
    TT_CHECK_OK(ctx, k->axpy(ctx, y, x, 2.0f, 3));
    TT_CHECK_NEAR(y[1], 3.0 * (double)x[1], 1e-6);
    TT_CHECK_OK(ctx, k->where(ctx, out, condition, a, b, 3));
    TT_CHECK(out[0] == 1 && out[1] == 5 && out[2] == 3);
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    TT_CHECK_OK(ctx, k->where_backward(ctx, a, b, out, condition, 3));
    TT_CHECK(a[0] == 1 && a[1] == 0 && a[2] == 3 && b[0] == 0 && b[1] == 5 && b[2] == 0);
    memcpy(g, x, 10 * sizeof *g);
    TT_CHECK_OK(ctx, k->copy(ctx, x + 1, x, 10 * sizeof(float)));           /* overlapping */
    CHECK_SAME(x + 1, g, 10);
}
TT_TEST(rows_and_shapes) { with_each(check_rows); }

static void check_adamw(tt_context *ctx) {
    const size_t n = 37;
    tt_adamw_args a = TT_INIT;
    float *p, *g, *m, *v;
    size_t i;
    pool_used = 0;
    a.p = noise(n, 71, 1.0f);
    a.g = noise(n, 72, 1.0f);
    a.m = noise(n, 73, 0.1f);
    a.v = noise(n, 74, 0.1f);
    for (i = 0; i < n; i++) { a.v[i] = fabsf(a.v[i]); }
    p = same(a.p, n);
    g = same(a.g, n);
    m = same(a.m, n);
    v = same(a.v, n);
    a.n = n;
    a.lr = 0.01f;
    a.beta1 = 0.9f;
    a.beta2 = 0.99f;
    a.eps = 1e-8f;
    a.weight_decay = 0.1f;
    a.correction1 = 0.19f;
    a.correction2 = 0.0199f;
    a.grad_scale = 0.5f;
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->adamw(ctx, &a));
    for (i = 0; i < n; i++) {
        double gi = 0.5 * (double)g[i], mi = 0.9 * (double)m[i] + 0.1 * gi, vi = 0.99 * (double)v[i] + 0.01 * gi * gi;
        TT_CHECK_NEAR(a.m[i], mi, 1e-6);
        TT_CHECK_NEAR(a.v[i], vi, 1e-6);
        TT_CHECK_NEAR(a.p[i], (double)p[i] - 0.01 * (mi / 0.19 / (sqrt(vi / 0.0199) + 1e-8) + 0.1 * (double)p[i]), 1e-6);
    }
}
TT_TEST(adamw_matches_reference) { with_each(check_adamw); }

TT_TEST(casts_round_to_even) {
    tt_context *ctx = tt_create(NULL);
    static const float x[] = {1.0f, -2.5f, 65504.0f, 65519.0f, 65520.0f, 5.9604645e-8f, 2.9802322e-8f, 2.9802326e-8f, 6.1e-5f, 1.0009765f};
    static const uint16_t f16[] = {0x3C00, 0xC100, 0x7BFF, 0x7BFF, 0x7C00, 0x0001, 0x0000, 0x0001, 0x03FF, 0x3C01};
    static const float ties[] = {1.00390625f, 1.01171875f, -3.3895314e38f};
    static const uint16_t bf16[] = {0x3F80, 0x3F82, 0xFF7F};
    uint16_t half[65536];
    static float all[65536];
    static uint16_t again[65536];
    uint32_t i;
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, half, TT_F16, x, TT_F32, 10));
    for (i = 0; i < 10; i++) { TT_CHECK_INT(half[i], f16[i]); }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, half, TT_BF16, ties, TT_F32, 3));
    for (i = 0; i < 3; i++) { TT_CHECK_INT(half[i], bf16[i]); }
    for (i = 0; i < 65536; i++) { half[i] = (uint16_t)i; }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, all, TT_F32, half, TT_F16, 65536));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, again, TT_F16, all, TT_F32, 65536));
    for (i = 0; i < 65536; i++) { if ((i & 0x7FFF) <= 0x7C00) { TT_CHECK_INT(again[i], i); } else { TT_CHECK(isnan(all[i]) && (again[i] & 0x7FFF) > 0x7C00); } }
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, all, TT_F32, half, TT_BF16, 65536));
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->cast(ctx, again, TT_BF16, all, TT_F32, 65536));
    for (i = 0; i < 65536; i++) { if ((i & 0x7FFF) <= 0x7F80) { TT_CHECK_INT(again[i], i); } }
    TT_CHECK_INT(tt_backend_get(ctx)->cast(ctx, all, TT_F32, half, TT_I32, 1), TT_ERR_ARG);
    tt_destroy(ctx);
}

/* ---- threads ---- */
/* Everything that runs in parallel, on one thread and on several. */
static void run_all(tt_context *ctx, float *out, size_t *used) {
    const tt_backend *k = tt_backend_get(ctx);
    tt_gemm_args g;
    tt_attention_args a;
    tt_logprobs_args l;
    int32_t targets[LP_N];
    size_t nq = TOKENS * HEADS * 24, nk = TOKENS * KV * 24;
    pool_used = 0;
    g = gemm_args(301, 260, 270, 0, 1, NULL, NULL, NULL);
    g.a = noise(gemm_a_size(&g), 1, 1.0f);
    g.b = noise(gemm_b_size(&g), 2, 1.0f);
    g.c = zeros(301 * 263);
    TT_CHECK_OK(ctx, k->gemm(ctx, &g));
    g.m = 6;
    TT_CHECK_OK(ctx, k->gemm(ctx, &g));
    a = attention_args(24);
    a.dout = noise(nq, 14, 1.0f);
    a.dq = zeros(nq);
    a.dk = zeros(nk);
    a.dv = zeros(nk);
    TT_CHECK_OK(ctx, k->attention_forward(ctx, &a));
    TT_CHECK_OK(ctx, k->attention_backward(ctx, &a));
    l = logprobs_args(targets);
    l.dlogprobs = noise(LP_N, 23, 1.0f);
    l.dx = zeros(LP_N * LP_DIM);
    l.dw = zeros(LP_VOCAB * LP_DIM);
    TT_CHECK_OK(ctx, k->logprobs_forward(ctx, &l));
    TT_CHECK_OK(ctx, k->logprobs_backward(ctx, &l));
    {
        const int n = 700, dim = 200;
        const size_t size = (size_t)(n * dim);
        float *x = noise(size, 81, 1.0f), *w = noise((size_t)dim, 82, 1.0f), *y = zeros(size), *rstd = zeros((size_t)n), *dx = zeros(size), *dw = zeros((size_t)dim);
        TT_CHECK_OK(ctx, k->rmsnorm(ctx, y, rstd, x, w, n, dim, 1e-5f));
        TT_CHECK_OK(ctx, k->rmsnorm_backward(ctx, dx, dw, y, x, w, rstd, n, dim));
        TT_CHECK_OK(ctx, k->binary(ctx, TT_SWIGLU, y, x, dx, size));
        TT_CHECK_OK(ctx, k->bias_backward(ctx, dw, y, n, dim));
    }
    memcpy(out, pool, pool_used * sizeof(float));
    *used = pool_used;
}
static void check_threads(void) {
    static float one[1 << 21], two[1 << 21];
    size_t i, n1, n2;
    memset(pool, 0, sizeof pool);
    for (i = 0; i < sizeof all_kernels / sizeof all_kernels[0]; i++) {
        tt_context *a = context_of(all_kernels[i], 1), *b = context_of(all_kernels[i], 3);
        if (a && b) {
            run_all(a, one, &n1);
            run_all(b, two, &n2);
            TT_CHECK_INT(n1, n2);
            CHECK_SAME(one, two, n1);
        }
        tt_destroy(a);
        tt_destroy(b);
    }
}
TT_TEST(threads_do_not_change_bits) {
    size_t i;
    for (i = 0; i < N_MATMULS; i++) {
        matmul = all_matmuls[i];
        check_threads();
    }
    matmul = "f32";
}

/* ---- opening ---- */
static void refused(const char *kernel, const char *products, const char *named, const char *expected) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.kernel = kernel;
    desc.matmul = products;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), named);
    TT_CHECK_CONTAINS(tt_error(ctx), expected);
    tt_destroy(ctx);
}
TT_TEST(unknown_kernel_is_an_error) {
    refused("mmx", NULL, "mmx", "portable");
    refused("portable", "dot-bf16", "dot-bf16", "\"f32\"");
}
TT_TEST(scratch_is_freed_and_its_lack_reported) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_gemm_args g;
    desc.allocator = tt_test_allocator(&memory);
    desc.n_threads = 1;
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    pool_used = 0;
    g = gemm_args(200, 60, 20, 0, 1, noise(6000, 1, 1.0f), noise(6000, 2, 1.0f), zeros(200 * 63));
    memory.fail_at = memory.calls + 1;
    TT_CHECK_INT(tt_backend_get(ctx)->gemm(ctx, &g), TT_ERR_MEM);
    memory.fail_at = memory.calls + 2;
    TT_CHECK_INT(tt_backend_get(ctx)->gemm(ctx, &g), TT_ERR_MEM);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->gemm(ctx, &g));
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_MAIN(gemm_matches_reference, gemm_of_rounded_factors_matches_reference, gemm_of_half_is_that_of_widened, gemm_of_panels_keeps_its_bits, gemm_activates_in_the_same_pass, gemm_keeps_its_bits, attention_matches_reference, decode_equals_prefill, logprobs_match_reference,
        logprobs_keep_their_bits, norms_match_reference, rope_turns_and_turns_back, elementwise_matches_reference, exp_is_right_at_its_ends,
        rows_and_shapes, adamw_matches_reference, casts_round_to_even, threads_do_not_change_bits, unknown_kernel_is_an_error,
        scratch_is_freed_and_its_lack_reported)
