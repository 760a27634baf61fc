/* Matrix products of training and of decoding, OpenBLAS beside ours in the same process where the Makefile finds it.
 *   build/bench_gemm [THREADS [PART]]           TT_KERNEL=portable|avx2|avx512|neon forces ours
 * gemm_nt_MxNxK: C[m,n] = A[m,k] B[n,k]^T, a layer forward; nn: B[k,n], back to its input; tn: A[k,m], C +=, the gradient of
 * its weights. gemm_panels_: nt with the panels of B made before, as tt_generate does. gemm_geomean_training, _decode and _panels:
 * the geometric means over the shapes of those names. On a device, whose
 * training shapes are larger, also attention_forward_BxTxHxD and attention_backward_: B causal sequences of T tokens, H heads of
 * D channels, four of which share their keys; four operations a channel for each of half of T x T pairs, back ten. */
#define _POSIX_C_SOURCE 200809L
#include "bench.h"
#ifdef TT_OPENBLAS
#include <cblas.h>
#include <unistd.h>
void openblas_set_num_threads(int n);
char *openblas_get_corename(void);
static const char *const rival_name = "openblas";
#else
static const char *const rival_name = NULL;
#endif

enum { RUNS = 7, FROM_MEMORY = 64 << 20 };
typedef struct shape { const char *kind; int m, n, k; size_t walk_bytes; } shape;

/* The demo (2000 tokens), 6 layers x 384 (16 x 256 tokens), GPT-2 124M (4 x 64 tokens, fused q, k, v, and head), squares. */
static const shape training[] = {
    {"nt", 2000, 256, 96, 0}, {"nt", 2000, 96, 256, 0}, {"nn", 2000, 96, 256, 0}, {"tn", 256, 96, 2000, 0},
    {"nt", 4096, 384, 384, 0}, {"nt", 4096, 1024, 384, 0}, {"nt", 4096, 384, 1024, 0}, {"nn", 4096, 384, 1024, 0}, {"nn", 4096, 1024, 384, 0},
    {"tn", 1024, 384, 4096, 0}, {"tn", 384, 1024, 4096, 0}, {"tn", 384, 384, 4096, 0},
    {"nn", 256, 2304, 768, 0}, {"nn", 256, 768, 3072, 0}, {"nt", 256, 3072, 768, 0}, {"nt", 256, 768, 2304, 0}, {"tn", 768, 3072, 256, 0},
    {"nt", 256, 50257, 768, 0}, {"nn", 256, 768, 50257, 0}, {"tn", 50257, 768, 256, 0},
    {"nt", 512, 512, 512, 0}, {"nn", 512, 512, 512, 0}, {"tn", 512, 512, 512, 0}, {"nt", 1024, 1024, 1024, 0}
};
/* On a device: GPT-2 124M (16 x 1024 tokens) and Llama 3.2 1B (4 x 1024), layers and head, and a square. */
static const shape device_training[] = {
    {"nt", 16384, 2304, 768, 0}, {"nt", 16384, 3072, 768, 0}, {"nt", 16384, 768, 3072, 0}, {"nn", 16384, 768, 3072, 0}, {"tn", 3072, 768, 16384, 0}, {"nt", 16384, 50257, 768, 0},
    {"nt", 4096, 2048, 2048, 0}, {"nt", 4096, 8192, 2048, 0}, {"nt", 4096, 2048, 8192, 0}, {"nn", 4096, 2048, 8192, 0}, {"tn", 8192, 2048, 4096, 0}, {"nt", 4096, 128256, 2048, 0},
    {"nt", 8192, 8192, 8192, 0}
};
/* M rows at once through a layer of the demo, a layer and the head of 110M, each product with the next of as many matrices
 * as the model has weights: from memory, as in decoding, unless all of them fit a cache. */
static const int decode_rows[] = {1, 2, 4, 8, 16, 32, 64};
static const shape decode[] = {{"nt", 0, 256, 96, 1500 << 10}, {"nt", 0, 2048, 768, 440 << 20}, {"nt", 0, 32000, 768, 440 << 20}};

typedef struct product {
    tt_gemm_args args;
    const float *b;
    char *panels;                               /* of all matrices, or NULL    */
    size_t panel_bytes;                         /* of one                      */
    int n_matrices, at;
    tt_context *ctx;
} product;

static const float *next_matrix(product *p) {
    p->at = (p->at + 1) % p->n_matrices;
    return p->b + (size_t)p->at * (size_t)p->args.n * (size_t)p->args.k;
}
static void *panels_of(const product *p) { return p->panels ? p->panels + (size_t)p->at * p->panel_bytes : NULL; }
static void run_ours(product *p) {
    p->args.b = next_matrix(p);
    p->args.panels = panels_of(p);
    bench_check(p->ctx, tt_backend_get(p->ctx)->gemm(p->ctx, &p->args) == TT_OK);
}
static void run_rival(product *p) {
#ifdef TT_OPENBLAS
    const tt_gemm_args *g = &p->args;
    cblas_sgemm(CblasRowMajor, g->transpose_a ? CblasTrans : CblasNoTrans, g->transpose_b ? CblasTrans : CblasNoTrans, g->m, g->n, g->k,
                1.0f, g->a, g->lda, next_matrix(p), g->ldb, g->accumulate ? 1.0f : 0.0f, g->c, g->ldc);
#else
    (void)p;
#endif
}
/* GFLOP/s of as many products as take some 20 ms; one before them wakes the threads. */
static double speed(void (*run)(product *), product *p, int repeats) {
    double begin, work = 2e-9 * p->args.m * p->args.n * p->args.k;
    int i;
    if (rival_name && run == run_ours && tt_threads(p->ctx) > 1) { bench_rest(); }
    run(p);
    bench_sync(p->ctx);
    begin = tt_clock();
    for (i = 0; i < repeats; i++) { run(p); }
    bench_sync(p->ctx);
    return work * repeats / (tt_clock() - begin);
}
/* Our median and, as a pair of runs each, how many times the rival's speed it is. */
static bench_stat compare(product *p, double *rival_value, double *ratio) {
    double ours[RUNS], rivals[RUNS], ratios[RUNS];
    double first = speed(run_ours, p, 1), work = 2e-9 * p->args.m * p->args.n * p->args.k;
    int repeats = 1 + (int)(0.02 * first / work), run;
    for (run = 0; run < RUNS; run++) {
        ours[run] = speed(run_ours, p, repeats);
        rivals[run] = rival_name ? speed(run_rival, p, repeats) : 1;
        ratios[run] = ours[run] / rivals[run];
    }
    *rival_value = bench_stat_of(rivals, RUNS).median;
    *ratio = bench_stat_of(ratios, RUNS).median;
    return bench_stat_of(ours, RUNS);
}
static void make_panels(product *p) {
    const tt_backend *backend = tt_backend_get(p->ctx);
    int i;
    p->panel_bytes = backend->gemm_panels(p->ctx, &p->args, NULL);
    p->panels = (char *)backend->alloc(p->ctx, (size_t)p->n_matrices * p->panel_bytes);
    bench_check(p->ctx, p->panels != NULL);
    for (i = 0; i < p->n_matrices; i++) {
        p->args.b = next_matrix(p);
        backend->gemm_panels(p->ctx, &p->args, panels_of(p));
    }
}
/* A device makes panels in some precisions only. */
static int has_panels(tt_context *ctx) {
    tt_gemm_args g = TT_INIT;
    g.n = g.k = g.ldb = 8;
    return tt_backend_get(ctx)->gemm_panels && tt_backend_get(ctx)->gemm_panels(ctx, &g, NULL) > 0;
}
static void matrices(tt_context *ctx, const shape *s, product *p) {
    size_t b_size = (size_t)s->k * (size_t)s->n;
    tt_gemm_args *g = &p->args;
    memset(p, 0, sizeof *p);
    p->ctx = ctx;
    p->n_matrices = 1 + (int)(s->walk_bytes / (b_size * sizeof(float)));
    g->transpose_a = s->kind[0] == 't';
    g->transpose_b = s->kind[1] != 'n';                 /* "panels" too */
    g->accumulate = g->transpose_a;
    g->m = s->m;
    g->n = g->ldc = s->n;
    g->k = s->k;
    g->lda = g->transpose_a ? s->m : s->k;
    g->ldb = g->transpose_b ? s->k : s->n;
    g->a = bench_floats(ctx, (size_t)s->m * (size_t)s->k);
    g->c = bench_floats(ctx, (size_t)s->m * (size_t)s->n);
    p->b = bench_floats(ctx, b_size * (size_t)p->n_matrices);
    if (s->kind[0] == 'p') { make_panels(p); }
}
static void matrices_free(product *p) {
    const tt_gemm_args *g = &p->args;
    bench_floats_free(p->ctx, g->a, (size_t)g->m * (size_t)g->k);
    bench_floats_free(p->ctx, g->c, (size_t)g->m * (size_t)g->n);
    bench_floats_free(p->ctx, p->b, (size_t)g->k * (size_t)g->n * (size_t)p->n_matrices);
    tt_backend_get(p->ctx)->free(p->ctx, p->panels, (size_t)p->n_matrices * p->panel_bytes);
}
/* Logarithms of our speed, the rival's and the ratio, summed for the geometric means. */
typedef struct means { double ours, rival, ratio; int n; } means;

static void bench(tt_context *ctx, const shape *s, means *sum) {
    bench_figure f = TT_INIT;
    char name[64];
    product p;
    snprintf(name, sizeof name, "gemm_%s_%dx%dx%d", s->kind, s->m, s->n, s->k);
    if (!bench_wants(name)) { return; }
    matrices(ctx, s, &p);
    f.name = name;
    f.unit = "GFLOP/s";
    f.threads = tt_threads(ctx);
    f.rival = rival_name;
    f.ours = compare(&p, &f.rival_value, &f.ratio);
    f.peak = BENCH_FMA;
    f.peak_rate = f.ours.median;
    if (bench_roof(f.threads, BENCH_READ) * s->m / 2 < bench_roof(f.threads, BENCH_FMA) && s->walk_bytes >= FROM_MEMORY) {
        f.peak = BENCH_READ;                            /* 2 m floating-point operations for the four bytes of a weight */
        f.peak_rate = f.ours.median * 2 / s->m;
    }
    bench_print(&f);
    matrices_free(&p);
    sum->ours += log(f.ours.median);
    sum->rival += log(f.rival_value);
    sum->ratio += log(f.ratio);
    sum->n++;
}
static void bench_means(const char *name, int threads, const means *sum) {
    bench_figure f = TT_INIT;
    if (sum->n == 0) { return; }
    f.name = name;
    f.unit = "GFLOP/s";
    f.threads = threads;
    f.ours.low = f.ours.high = f.ours.median = exp(sum->ours / sum->n);
    f.rival = rival_name;
    f.rival_value = exp(sum->rival / sum->n);
    f.ratio = exp(sum->ratio / sum->n);
    f.peak = BENCH_FMA;
    f.peak_rate = f.ours.median;
    bench_print(&f);
}

/* ---- attention, on a device ---- */
typedef struct pairs { int sequences, length, heads, head_dim; } pairs;
static const shape small_training[] = {{"nt", 64, 48, 40, 0}};
static const pairs small_attentions[] = {{2, 70, 4, 16}};
static const pairs attentions[] = {{16, 1024, 12, 64}, {4, 4096, 32, 64}, {4, 4096, 32, 128}, {64, 256, 32, 64}};
typedef struct heads { tt_attention_args args; int32_t *offsets; size_t n_queries, n_keys; } heads;

static void heads_make(tt_context *ctx, const pairs *s, heads *h) {
    const tt_backend *backend = tt_backend_get(ctx);
    tt_attention_args *a = &h->args;
    size_t bytes = ((size_t)s->sequences + 1) * sizeof(int32_t);
    int32_t *offsets = (int32_t *)tt_alloc(ctx, (size_t)s->sequences + 1, sizeof *offsets), *there = (int32_t *)backend->alloc(ctx, bytes);
    int i;
    memset(h, 0, sizeof *h);
    bench_check(ctx, offsets && there);
    for (i = 0; i <= s->sequences; i++) { offsets[i] = i * s->length; }
    bench_check(ctx, backend->upload(ctx, there, offsets, bytes) == TT_OK);
    h->offsets = offsets;
    a->n_sequences = s->sequences;
    a->n_tokens = s->sequences * s->length;
    a->n_heads = s->heads;
    a->n_kv_heads = s->heads / 4;
    a->head_dim = s->head_dim;
    a->scale = 1.0f / sqrtf((float)s->head_dim);
    a->offsets = there;
    a->host_offsets = offsets;
    h->n_queries = (size_t)a->n_tokens * (size_t)(s->heads * s->head_dim);
    h->n_keys = h->n_queries / 4;
    a->q = bench_floats(ctx, h->n_queries);
    a->k = bench_floats(ctx, h->n_keys);
    a->v = bench_floats(ctx, h->n_keys);
    a->dout = bench_floats(ctx, h->n_queries);
    a->out = bench_floats(ctx, h->n_queries);
    a->dq = bench_floats(ctx, h->n_queries);
    a->dk = bench_floats(ctx, h->n_keys);
    a->dv = bench_floats(ctx, h->n_keys);
    a->lse = bench_floats(ctx, (size_t)a->n_tokens * (size_t)s->heads);
}
static void heads_free(tt_context *ctx, heads *h) {
    const tt_attention_args *a = &h->args;
    size_t bytes = ((size_t)a->n_sequences + 1) * sizeof(int32_t);
    bench_floats_free(ctx, a->q, h->n_queries);
    bench_floats_free(ctx, a->k, h->n_keys);
    bench_floats_free(ctx, a->v, h->n_keys);
    bench_floats_free(ctx, a->dout, h->n_queries);
    bench_floats_free(ctx, a->out, h->n_queries);
    bench_floats_free(ctx, a->dq, h->n_queries);
    bench_floats_free(ctx, a->dk, h->n_keys);
    bench_floats_free(ctx, a->dv, h->n_keys);
    bench_floats_free(ctx, a->lse, (size_t)a->n_tokens * (size_t)a->n_heads);
    tt_backend_get(ctx)->free(ctx, (void *)(uintptr_t)a->offsets, bytes);
    tt_free(ctx, h->offsets, bytes / sizeof(int32_t), sizeof(int32_t));
}
static double heads_seconds(tt_context *ctx, const heads *h, int backward) {
    const tt_backend *backend = tt_backend_get(ctx);
    double begin = tt_clock();
    bench_check(ctx, (backward ? backend->attention_backward : backend->attention_forward)(ctx, &h->args) == TT_OK);
    bench_sync(ctx);
    return tt_clock() - begin;
}
static void bench_attention(tt_context *ctx, const pairs *s, int backward) {
    bench_figure f = TT_INIT;
    double seconds[BENCH_MAX_RUNS], total = 0, work = (backward ? 5e-9 : 2e-9) * s->sequences * s->length * s->length * s->heads * s->head_dim;
    char name[64];
    heads h;
    int n = 0;
    snprintf(name, sizeof name, "attention_%s_%dx%dx%dx%d", backward ? "backward" : "forward", s->sequences, s->length, s->heads, s->head_dim);
    if (!bench_wants(name)) { return; }
    heads_make(ctx, s, &h);
    heads_seconds(ctx, &h, 0);                /* backward needs what it leaves */
    heads_seconds(ctx, &h, backward);
    for (; bench_again(n, total); n++) { total += seconds[n] = heads_seconds(ctx, &h, backward); }
    f.name = name;
    f.unit = "GFLOP/s";
    f.threads = tt_threads(ctx);
    f.ours = bench_rate_of(seconds, n, work);
    f.peak = BENCH_FMA;
    f.peak_rate = f.ours.median;
    bench_print(&f);
    heads_free(ctx, &h);
}
static void run(int n_threads) {
    tt_context *ctx = bench_context(n_threads);
    means trained = TT_INIT, decoded = TT_INIT, packed = TT_INIT;
    const shape *shapes = bench_state.on_device ? device_training : training;
    const int small = getenv("BENCH_SMALL") != NULL;
    const pairs *heads_of = small ? small_attentions : attentions;
    size_t i, r, n_heads = small ? 1 : sizeof attentions / sizeof attentions[0], n_shapes = small ? 1 : bench_state.on_device ? sizeof device_training / sizeof device_training[0] : sizeof training / sizeof training[0];
#ifdef TT_OPENBLAS
    openblas_set_num_threads(n_threads);
    printf("RIVAL openblas=%s threads=%d\n", openblas_get_corename(), n_threads);      /* its kernels */
#endif
    if (small) { shapes = small_training; }
    for (i = 0; i < n_shapes; i++) { bench(ctx, &shapes[i], &trained); }
    for (i = 0; !small && i < sizeof decode / sizeof decode[0]; i++) {
        for (r = 0; r < sizeof decode_rows / sizeof decode_rows[0]; r++) {
            shape s = decode[i];
            s.m = decode_rows[r];
            bench(ctx, &s, &decoded);
            s.kind = "panels";
            if (has_panels(ctx)) { bench(ctx, &s, &packed); }
        }
    }
    bench_means("gemm_geomean_training", n_threads, &trained);
    bench_means("gemm_geomean_decode", n_threads, &decoded);
    bench_means("gemm_geomean_panels", n_threads, &packed);
    for (i = 0; bench_state.on_device && i < 2 * n_heads; i++) { bench_attention(ctx, &heads_of[i / 2], (int)i % 2); }
    tt_destroy(ctx);
}

#ifdef TT_OPENBLAS
/* ---- the rival's kernels ----
 * Where OpenBLAS does not know a CPU it takes kernels of a far older one, and any figure beside them flatters.
 * It chooses as it is loaded, so this program starts once for each core type, as `bench_gemm probe`, and then
 * for good with the fastest. A type that the CPU cannot run ends its probe, and is out. */
static const char *const core_types[] = {
    "", "SapphireRapids", "Cooperlake", "SkylakeX", "Zen", "Haswell", "Nehalem", "NEOVERSEV1", "NEOVERSEN1", "ARMV8"
};

static int probe(void) {
    enum { SIDE = 768, N = SIDE * SIDE };
    float *x = (float *)calloc(3 * N, sizeof *x);
    double best = 0;
    int i;
    if (!x) { return 1; }
    openblas_set_num_threads(1);
    for (i = 0; i < 9; i++) {
        double begin = tt_clock(), rate;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SIDE, SIDE, SIDE, 1.0f, x, SIDE, x + N, SIDE, 0.0f, x + 2 * N, SIDE);
        rate = 2e-9 * SIDE * SIDE * SIDE / (tt_clock() - begin);
        if (rate > best) { best = rate; }
    }
    free(x);
    printf("%.1f %s\n", best, openblas_get_corename());
    return 0;
}

/* GFLOP/s of a core type, 0 if it does not run; name receives what OpenBLAS calls the kernels it took. */
static double probe_of(const char *program, const char *type, char name[64]) {
    char command[4096];
    double rate = 0;
    FILE *child;
    snprintf(command, sizeof command, "OPENBLAS_CORETYPE=%s '%s' probe 2> /dev/null", type, program);
    child = popen(command, "r");
    if (!child || fscanf(child, "%lf %63s", &rate, name) != 2) { rate = 0; }
    if (child && pclose(child) != 0) { rate = 0; }
    return rate;
}

static void choose_rival(char **argv) {
    double best = 0, rate;
    size_t i, chosen = 0;
    char name[64];
    if (getenv("OPENBLAS_CORETYPE")) { return; }
    for (i = 0; i < sizeof core_types / sizeof core_types[0]; i++) {
        rate = probe_of(argv[0], core_types[i], name);
        if (rate <= 0 || (i > 0 && strcmp(name, core_types[i]) != 0)) { continue; }    /* a name it does not know */
        printf("RIVAL openblas %s: %.1f GFLOP/s with the kernels %s\n", i ? core_types[i] : "by itself", rate, name);
        if (rate > 1.02 * best) {
            best = rate;
            chosen = i;
        }
    }
    fflush(stdout);
    setenv("OPENBLAS_CORETYPE", core_types[chosen], 1);
    execv(argv[0], argv);
    perror("bench_gemm: cannot start again with OpenBLAS's fastest kernels");
    exit(1);
}
#endif

int main(int argc, char **argv) {
#ifdef TT_OPENBLAS
    if (argc == 2 && strcmp(argv[1], "probe") == 0) { return probe(); }
    choose_rival(argv);
#endif
    return bench_main(argc, argv, run);
}
