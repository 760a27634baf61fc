/* Matrix product, one thread: our kernels, and OpenBLAS beside them if built with -DTT_OPENBLAS -lopenblas.
 * bench_gemm [kernel]   kernel: portable, avx2, avx512, neon; default the best of this CPU */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include <stdio.h>
#include <stdlib.h>
#ifdef TT_OPENBLAS
#include <cblas.h>
void openblas_set_num_threads(int n);
#endif

typedef struct shape { int m, n, k, transpose_a, transpose_b; } shape;

static void product_ours(tt_context *ctx, const tt_gemm_args *g) {
    if (tt_backend_get(ctx)->gemm(ctx, g) != TT_OK) {
        fprintf(stderr, "%s\n", tt_error(ctx));
        exit(1);
    }
}
#ifdef TT_OPENBLAS
static void product_openblas(tt_context *ctx, const tt_gemm_args *g) {
    (void)ctx;
    cblas_sgemm(CblasRowMajor, g->transpose_a ? CblasTrans : CblasNoTrans, g->transpose_b ? CblasTrans : CblasNoTrans,
                g->m, g->n, g->k, 1.0f, g->a, g->lda, g->b, g->ldb, 0.0f, g->c, g->ldc);
}
#endif

/* GFLOP/s of the fastest of several runs, each of at least 20 ms. */
static double measure(void (*product)(tt_context *, const tt_gemm_args *), tt_context *ctx, const tt_gemm_args *g) {
    double work = 2e-9 * g->m * g->n * g->k, best = 0;
    int repeats = (int)(1.0 / work) + 1, run, i;
    product(ctx, g);
    for (run = 0; run < 7; run++) {
        double begin = tt_clock(), speed;
        for (i = 0; i < repeats; i++) { product(ctx, g); }
        speed = work * repeats / (tt_clock() - begin);
        if (speed > best) { best = speed; }
    }
    return best;
}

static float *filled(tt_context *ctx, size_t n) {
    float *x = (float *)tt_alloc(ctx, n, sizeof *x);
    tt_rng rng = TT_INIT;
    size_t i;
    if (!x) { exit(1); }
    for (i = 0; i < n; i++) { x[i] = (float)tt_rng_uniform(&rng) - 0.5f; }
    return x;
}

int main(int argc, char **argv) {
    static const shape shapes[] = {
        {2000, 256, 96, 0, 1}, {2000, 96, 256, 0, 1}, {2000, 96, 256, 0, 0}, {256, 96, 2000, 1, 0},
        {512, 512, 512, 0, 1}, {512, 512, 512, 0, 0}, {512, 512, 512, 1, 0}, {1024, 1024, 1024, 0, 1},
        {1, 2048, 2048, 0, 1}, {8, 2048, 2048, 0, 1}, {8, 256, 96, 0, 1}
    };
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    size_t s;
    desc.n_threads = 1;
    desc.kernel = argc > 1 ? argv[1] : NULL;
    ctx = tt_create(&desc);
    if (!ctx || tt_error_status(ctx) != TT_OK) { fprintf(stderr, "%s\n", tt_error(ctx)); return 1; }
#ifdef TT_OPENBLAS
    openblas_set_num_threads(1);
#endif
    for (s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        const shape *p = shapes + s;
        tt_gemm_args g = TT_INIT;
        size_t a_size = (size_t)p->m * (size_t)p->k, b_size = (size_t)p->k * (size_t)p->n, c_size = (size_t)p->m * (size_t)p->n;
        double ours;
        float *a = filled(ctx, a_size), *b = filled(ctx, b_size);
        g.m = p->m;
        g.n = g.ldc = p->n;
        g.k = p->k;
        g.transpose_a = p->transpose_a;
        g.transpose_b = p->transpose_b;
        g.lda = p->transpose_a ? p->m : p->k;
        g.ldb = p->transpose_b ? p->k : p->n;
        g.a = a;
        g.b = b;
        g.c = filled(ctx, c_size);
        ours = measure(product_ours, ctx, &g);
        printf("BENCH name=gemm_%s_%dx%dx%d kernel=%s threads=1 ours=%.1f unit=GFLOP/s ", p->transpose_a ? "tn" : p->transpose_b ? "nt" : "nn",
               p->m, p->n, p->k, tt_kernel(ctx), ours);
#ifdef TT_OPENBLAS
        {
            double rival = measure(product_openblas, ctx, &g);
            printf("rival=openblas rival_value=%.1f ratio=%.2f\n", rival, ours / rival);
        }
#else
        printf("rival=none rival_value=0 ratio=0\n");
#endif
        fflush(stdout);
        tt_free(ctx, a, a_size, sizeof(float));
        tt_free(ctx, b, b_size, sizeof(float));
        tt_free(ctx, g.c, c_size, sizeof(float));
    }
    tt_destroy(ctx);
    return 0;
}
