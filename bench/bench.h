/* bench.h - what the benches share: the limits of the machine, measured before anything else, and the lines they print.
 *
 *   MACHINE cpu="..." cores=2 simd=avx512 compiler="..." flags="..." commit=... load=...
 *   LIMIT threads=1 fma=... bf16=... unit=GFLOP/s read=... unit=GB/s
 *   BENCH name=... threads=1 ours=... unit=... spread=lo..hi rival=... rival_value=... ratio=... kernel=avx512 peak=fma share=...
 *
 * ours: the median of the runs; spread: the least and the greatest of them. ratio: how many times better ours is, the
 * median over pairs of runs, one of ours and one of the rival right after it. share: what part the run made of the limit
 * named by peak, at the same number of threads: fma and bf16, the rate of multiply-adds in registers with the widest
 * instructions that this CPU has; read, that of reading READ_BYTES once, which weights that fit a cache can pass. "-"
 * stands for what there is not.
 *
 * With TT_MATMUL=bf16 the names end in _bf16, and their share is of that peak.
 *
 * build/cuda/bench_NAME with TT_BACKEND=cuda measures on the device, which has figures of its own and one line of limits:
 *
 *   DEVICE name="..." f32=... tf32=... bf16=... unit=GFLOP/s copy=... unit=GB/s
 *
 * f32, tf32, bf16: the best product of two matrices of PEAK_SIDE squared in that precision, cuBLASLt's as tt_cuda.cu calls
 * it, so with the rounding of floats to bf16; not what the tensor cores could do at most. copy: bytes read and written by a
 * copy of READ_BYTES on the device. TT_CUDA_MATH chooses the precision: names end in _tf32 or _bf16, peak is that line's,
 * kernel is cuda_MATH, with TT_CUDA_KERNELS behind it if that is set. Behind each figure a line COUNTS tells what has run so
 * far (tt_cuda_counts_get). BENCH_QUICK=1: a quarter of the time for each figure. BENCH_SMALL=1: sizes for a device that is
 * emulated on the CPU, whose figures mean nothing.
 *
 * Every bench: build/bench_NAME [THREADS [PART]]. THREADS 0, the default: one thread, then one per processor. PART: only
 * figures with this in their names. */
#ifndef BENCH_H
#define BENCH_H
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#ifndef BENCH_FLAGS
#define BENCH_FLAGS "unknown"
#endif
#ifndef BENCH_COMMIT
#define BENCH_COMMIT "unknown"
#endif

#define BENCH_MAYBE __attribute__((unused))     /* not every bench needs it */

enum { READ_BYTES = 512 << 20, PEAK_SIDE = 16384, BENCH_MAX_THREADS = 1024, BENCH_MAX_RUNS = 64 };

typedef enum bench_peak { BENCH_NO_PEAK = 0, BENCH_FMA, BENCH_BF16, BENCH_READ } bench_peak;
typedef struct bench_limits { double rate[4]; /* by bench_peak, GFLOP/s and GB/s; 0 = not on this CPU */ } bench_limits;
typedef struct bench_stat { double median, low, high; } bench_stat;

/* ---- the limits ---- */

/* Twelve chains of multiply-adds: more than latency times ports of any CPU so far. */
#define BENCH_CHAINS(X) X(s0) X(s1) X(s2) X(s3) X(s4) X(s5) X(s6) X(s7) X(s8) X(s9) X(s10) X(s11)
enum { CHAINS = 12, CHAIN_STEPS = 1 << 20 };
static volatile float bench_seed = 0.5f;        /* read anew for each chain, or the compiler would make one of equal ones */
#define BENCH_SEED(s) s = zero + bench_seed;
#define BENCH_ZERO(s) s = zero;
#define BENCH_ADD(s) zero += s;
/* NAME: CHAIN_STEPS times STEP(s) on every chain, vectors of type VECTOR made of floats by SET. */
#define BENCH_MULTIPLY_ADD(NAME, TARGET, VECTOR, SET, STEP)                     \
    TARGET static float NAME(void) {                                            \
        VECTOR a = SET(0.999f), b = SET(0.5f), zero = SET(0.0f);                \
        VECTOR s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11;                \
        float first;                                                            \
        int i;                                                                  \
        BENCH_CHAINS(BENCH_SEED)                                                \
        for (i = 0; i < CHAIN_STEPS; i++) { BENCH_CHAINS(STEP) }                \
        BENCH_CHAINS(BENCH_ADD)                                                 \
        memcpy(&first, &zero, sizeof first);                                    \
        return first;                                                           \
    }
/* NAME: exclusive or of n vectors, n a multiple of the chains. */
#define BENCH_LOAD(s) s ^= *p++;
#define BENCH_XOR(s) zero ^= s;
#define BENCH_READ_ALL(NAME, TARGET, VECTOR, ZERO)                              \
    TARGET static float NAME(const void *memory, size_t bytes) {                \
        const VECTOR *p = (const VECTOR *)memory, *end = p + bytes / sizeof *p; \
        VECTOR zero = ZERO;                                                     \
        VECTOR s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11;                \
        float first;                                                            \
        BENCH_CHAINS(BENCH_ZERO)                                                \
        while (p + CHAINS <= end) { BENCH_CHAINS(BENCH_LOAD) }                  \
        BENCH_CHAINS(BENCH_XOR)                                                 \
        memcpy(&first, &zero, sizeof first);                                    \
        return first;                                                           \
    }

#define BENCH_SCALAR(x) x
#define BENCH_STEP_SCALAR(s) s = s * a + b;
BENCH_MULTIPLY_ADD(bench_fma_portable, , float, BENCH_SCALAR, BENCH_STEP_SCALAR)
BENCH_READ_ALL(bench_read_portable, , uint64_t, 0)

typedef struct bench_instructions {
    const char *name;
    int runs;                                   /* this CPU has them           */
    double flops;                               /* of one STEP                 */
    bench_peak peak;                            /* that multiply_add measures  */
    float (*multiply_add)(void);
    float (*read)(const void *memory, size_t bytes);
} bench_instructions;

#if defined(__x86_64__) || defined(__i386__)
#define BENCH_AVX2 __attribute__((target("avx2,fma")))
#define BENCH_AVX512 __attribute__((target("avx512f")))
#define BENCH_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))
#define BENCH_STEP_AVX2(s) s = _mm256_fmadd_ps(s, a, b);
#define BENCH_STEP_AVX512(s) s = _mm512_fmadd_ps(s, a, b);
#define BENCH_STEP_BF16(s) s = _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)b);
BENCH_MULTIPLY_ADD(bench_fma_avx2, BENCH_AVX2, __m256, _mm256_set1_ps, BENCH_STEP_AVX2)
BENCH_MULTIPLY_ADD(bench_fma_avx512, BENCH_AVX512, __m512, _mm512_set1_ps, BENCH_STEP_AVX512)
BENCH_MULTIPLY_ADD(bench_bf16_avx512, BENCH_AVX512_BF16, __m512, _mm512_set1_ps, BENCH_STEP_BF16)
BENCH_READ_ALL(bench_read_avx2, BENCH_AVX2, __m256i, _mm256_setzero_si256())
BENCH_READ_ALL(bench_read_avx512, BENCH_AVX512, __m512i, _mm512_setzero_si512())
#elif defined(__aarch64__)
#define BENCH_STEP_NEON(s) s = vfmaq_f32(b, s, a);
BENCH_MULTIPLY_ADD(bench_fma_neon, , float32x4_t, vdupq_n_f32, BENCH_STEP_NEON)
BENCH_READ_ALL(bench_read_neon, , uint64x2_t, vdupq_n_u64(0))
#endif

/* Ascending width; the last one that runs names the machine. */
static const bench_instructions *bench_instruction_sets(int *n) {
    static bench_instructions sets[5];
    int k = 0;
#define BENCH_SET(NAME, RUNS, FLOPS, PEAK, MULTIPLY_ADD, READ) \
    sets[k].name = NAME; sets[k].runs = RUNS; sets[k].flops = FLOPS; sets[k].peak = PEAK; sets[k].multiply_add = MULTIPLY_ADD; sets[k++].read = READ
    BENCH_SET("portable", 1, 2, BENCH_FMA, bench_fma_portable, bench_read_portable);
#if defined(__x86_64__) || defined(__i386__)
    BENCH_SET("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), 16, BENCH_FMA, bench_fma_avx2, bench_read_avx2);
    BENCH_SET("avx512", __builtin_cpu_supports("avx512f") != 0, 32, BENCH_FMA, bench_fma_avx512, bench_read_avx512);
    BENCH_SET("avx512+bf16", __builtin_cpu_supports("avx512bf16") != 0, 64, BENCH_BF16, bench_bf16_avx512, NULL);
#elif defined(__aarch64__)
    BENCH_SET("neon", 1, 8, BENCH_FMA, bench_fma_neon, bench_read_neon);
#endif
    *n = k;
    return sets;
}

typedef struct bench_worker { const bench_instructions *set; const void *memory; size_t bytes; int *waiting; } bench_worker;
static void *bench_worker_run(void *user) {
    bench_worker *w = (bench_worker *)user;
    volatile float used;
    __sync_fetch_and_sub(w->waiting, 1);
    while (__sync_fetch_and_add(w->waiting, 0) > 0) { }
    used = w->memory ? w->set->read(w->memory, w->bytes) : w->set->multiply_add();
    (void)used;
    return NULL;
}
/* Seconds from the moment that all threads are there to the end of the last. memory NULL: multiply-adds. */
static double bench_together(int n_threads, const bench_instructions *set, const char *memory, size_t bytes) {
    static pthread_t threads[BENCH_MAX_THREADS];
    static bench_worker workers[BENCH_MAX_THREADS];
    int waiting = n_threads, i;
    size_t part = bytes / (size_t)n_threads / 64 * 64;
    double begin;
    for (i = 0; i < n_threads; i++) {
        workers[i].set = set;
        workers[i].memory = memory ? memory + part * (size_t)i : NULL;
        workers[i].bytes = part;
        workers[i].waiting = &waiting;
        if (i > 0 && pthread_create(&threads[i], NULL, bench_worker_run, &workers[i])) { fprintf(stderr, "bench: no thread\n"); exit(1); }
    }
    while (__sync_fetch_and_add(&waiting, 0) > 1) { }
    begin = tt_clock();
    bench_worker_run(&workers[0]);
    for (i = 1; i < n_threads; i++) { pthread_join(threads[i], NULL); }
    return tt_clock() - begin;
}
/* The best of several runs of every instruction set: what else runs on the machine only lowers it. */
static bench_limits bench_limits_measure(int n_threads) {
    bench_limits limits = TT_INIT;
    int n, k, run;
    const bench_instructions *sets = bench_instruction_sets(&n);
    char *memory = (char *)malloc(READ_BYTES + 64), *aligned = memory + (64 - (uintptr_t)memory % 64);
    if (!memory) { fprintf(stderr, "bench: out of memory\n"); exit(1); }
    memset(memory, 1, READ_BYTES + 64);
    for (k = 0; k < n; k++) {
        const bench_instructions *set = sets + k;
        for (run = 0; set->runs && run < 40; run++) {
            double flops = 1e-9 * n_threads * set->flops * CHAINS * CHAIN_STEPS / bench_together(n_threads, set, NULL, 0);
            if (flops > limits.rate[set->peak]) { limits.rate[set->peak] = flops; }
        }
        for (run = 0; set->runs && set->read && run < 8; run++) {
            double rate = 1e-9 * READ_BYTES / bench_together(n_threads, set, aligned, READ_BYTES);
            if (rate > limits.rate[BENCH_READ]) { limits.rate[BENCH_READ] = rate; }
        }
    }
    free(memory);
    return limits;
}

/* ---- the machine ---- */
static int bench_cores(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > BENCH_MAX_THREADS ? BENCH_MAX_THREADS : (int)n;
}
/* What follows `key` and ": \t" in a file of /proc, up to the end of the line. */
static void bench_proc(const char *path, const char *key, char *out, size_t size) {
    char line[512];
    FILE *file = fopen(path, "r");
    snprintf(out, size, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            const char *at = line + strlen(key);
            at += strspn(at, ": \t");
            snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
            break;
        }
    }
    if (file) { fclose(file); }
}
static void bench_machine_print(void) {
    char cpu[128], load[64];
    int n, k;
    const bench_instructions *sets = bench_instruction_sets(&n);
    const char *simd = "";
    for (k = 0; k < n; k++) { if (sets[k].runs) { simd = sets[k].name; } }
    bench_proc("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    bench_proc("/proc/loadavg", "", load, sizeof load);
    load[strcspn(load, " ")] = 0;
    printf("MACHINE cpu=\"%s\" cores=%d simd=%s compiler=\"%s\" flags=\"%s\" commit=%s load=%s\n", cpu, bench_cores(), simd,
#ifdef __clang__
           __VERSION__,
#else
           "gcc " __VERSION__,
#endif
           BENCH_FLAGS, BENCH_COMMIT, load);
}
/* Peak of the resident memory since the last reset, where the system tells (Linux); else since the start. */
BENCH_MAYBE static void bench_peak_reset(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file) {
        fputs("5", file);
        fclose(file);
    }
}
BENCH_MAYBE static double bench_peak_bytes(void) {
    char text[64];
    struct rusage usage;
    bench_proc("/proc/self/status", "VmHWM", text, sizeof text);
    if (atof(text) > 0) { return 1024 * atof(text); }
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss;
#else
    return 1024.0 * (double)usage.ru_maxrss;
#endif
}

/* ---- runs ---- */
static int bench_ascending(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return x < y ? -1 : x > y; }
static bench_stat bench_stat_of(double *values, int n) {
    bench_stat stat;
    qsort(values, (size_t)n, sizeof *values, bench_ascending);
    stat.median = n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
    stat.low = values[0];
    stat.high = values[n - 1];
    return stat;
}
/* work / seconds of each. */
BENCH_MAYBE static bench_stat bench_rate_of(const double *seconds, int n, double work) {
    double rates[BENCH_MAX_RUNS];
    int i;
    for (i = 0; i < n; i++) { rates[i] = work / seconds[i]; }
    return bench_stat_of(rates, n);
}
/* Threads of another library spin for a while after its last call; until they sleep, they would take a core from ours. */
BENCH_MAYBE static void bench_rest(void) {
    struct timespec rest;
    rest.tv_sec = 0;
    rest.tv_nsec = 200 * 1000 * 1000;
    nanosleep(&rest, NULL);
}

/* At least three runs, then up to two seconds of them. */
BENCH_MAYBE static int bench_again(int n_runs, double seconds) { return n_runs < 3 || (n_runs < BENCH_MAX_RUNS && seconds < (getenv("BENCH_QUICK") ? 0.5 : 2)); }

/* ---- the models ---- */

/* bench/peers.py reads these rows too. Rivals' shapes: GPT-2's smallest, stories15M and stories110M of llama2.c, Llama 3.2 1B. */
typedef struct bench_model {
    const char *name;
    int gpt2, layers, hidden, heads, inner, vocab, tied, context;
    int sequences, length;      /* of a training step; 0 = it is only sampled from, or trained by GRPO */
    int kv_heads;               /* 0 = heads                    */
    int device;                 /* only measured on a device    */
} bench_model;
static const bench_model bench_models[] = {
    {"demo", 0, 3, 96, 3, 256, 240, 0, 320, 50, 40, 0, 0},
    {"4x128", 0, 4, 128, 4, 352, 512, 0, 256, 32, 128, 0, 0},
    {"6x384", 0, 6, 384, 6, 1024, 512, 0, 256, 16, 256, 0, 0},
    {"gpt2_124m", 1, 12, 768, 12, 3072, 50257, 1, 1024, 4, 64, 0, 0},
    {"15m", 0, 6, 288, 6, 768, 32000, 1, 256, 0, 0, 0, 0},
    {"110m", 0, 12, 768, 12, 2048, 32000, 1, 1024, 0, 0, 0, 0},
    {"10m", 0, 8, 320, 5, 864, 240, 0, 320, 0, 0, 0, 0},
    {"gpt2_124m_16x1024", 1, 12, 768, 12, 3072, 50257, 1, 1024, 16, 1024, 0, 1},
    {"llama_1b", 0, 16, 2048, 32, 8192, 128256, 1, 4096, 4, 1024, 8, 1},
};
enum { BENCH_N_MODELS = sizeof bench_models / sizeof bench_models[0] };
BENCH_MAYBE static const bench_model *bench_model_find(const char *name) {
    const bench_model *m = bench_models;
    while (strcmp(m->name, name) != 0) { m++; }
    return m;
}
BENCH_MAYBE static tt_model_config bench_config(const bench_model *m) {
    tt_model_config c = TT_INIT;
    c.gpt2 = m->gpt2;
    c.num_hidden_layers = m->layers;
    c.hidden_size = m->hidden;
    c.num_attention_heads = m->heads;
    c.num_key_value_heads = m->kv_heads;
    c.intermediate_size = m->inner;
    c.vocab_size = m->vocab;
    c.tie_word_embeddings = m->tied;
    c.max_position_embeddings = m->context;
    c.bos_token_id = c.eos_token_id = -1;
    return c;
}
/* Weights that take part in a matrix product for every token: all but an embedding that only is looked up. */
BENCH_MAYBE static double bench_matrix_weights(const tt_model *model) {
    const tt_model_config *c = tt_model_config_get(model);
    double weights = (double)tt_model_size(model);
    if (!c->tie_word_embeddings) { weights -= (double)c->vocab_size * c->hidden_size; }
    if (c->gpt2) { weights -= (double)c->max_position_embeddings * c->hidden_size; }
    return weights;
}

/* ---- a bench ---- */
static struct { int n_threads, first_threads, on_device; const char *part; bench_limits limits[2]; const char *kernel; tt_context *ctx; /* the last that was made */ } bench_state;

typedef struct bench_figure {
    const char *name, *unit;
    int threads;
    bench_stat ours;
    bench_peak peak;
    double peak_rate;          /* what ours is in GFLOP/s or GB/s     */
    const char *rival;         /* NULL = none                         */
    double rival_value, ratio;
} bench_figure;

static int bench_wants(const char *name) { return !bench_state.part || strstr(name, bench_state.part) != NULL; }
static double bench_roof(int threads, bench_peak peak) { return bench_state.limits[threads == bench_state.n_threads].rate[peak]; }
static void bench_number(double x, const char *then) { printf("%.*f%s", x < 10 ? 3 : x < 100 ? 2 : x < 1000 ? 1 : 0, x, then); }
/* What has run on the device, so that a figure cannot be that of a slower way than it says. */
static void bench_counts_print(const char *name) {
#ifdef TT_CUDA
    tt_cuda_counts c;
    if (!bench_state.on_device) { return; }
    c = tt_cuda_counts_get(bench_state.ctx);
    printf("COUNTS name=%s gemm=%ld cublaslt, %ld tiles, %ld naive, %ld refused activations=%ld fused, %ld apart rounded=%ld, %.1f GB gradients=%ld written attention=%ld tiles, %ld decode, %ld naive "
           "graphs=%ld made, %ld updated, %ld repeated, %ld launched, %ld lost\n", name, c.gemm_blas, c.gemm_tiles, c.gemm_naive, c.gemm_refused, c.activations_fused, c.activations_apart,
           c.factors_rounded, 1e-9 * (double)c.bytes_rounded, c.gradients_written, c.attention_tiles, c.attention_decode, c.attention_naive, c.graphs_made, c.graphs_updated, c.graphs_repeated, c.graphs_launched, c.graphs_lost);
#else
    (void)name;
#endif
}
static void bench_print(const bench_figure *f) {
    static const char *const cpu_peaks[] = {"-", "fma", "bf16", "read"}, *const device_peaks[] = {"-", "f32", "bf16", "copy"};
    int bf16 = strstr(bench_state.kernel, "bf16") != NULL, tf32 = strstr(bench_state.kernel, "tf32") != NULL;
    bench_peak peak = bf16 && f->peak == BENCH_FMA ? BENCH_BF16 : f->peak;
    double limit = bench_roof(f->threads, peak);
    printf("BENCH name=%s%s threads=%d ours=", f->name, bf16 ? "_bf16" : tf32 ? "_tf32" : "", f->threads);
    bench_number(f->ours.median, " unit=");
    printf("%s spread=", f->unit);
    bench_number(f->ours.low, "..");
    bench_number(f->ours.high, " rival=");
    if (f->rival) {
        printf("%s rival_value=", f->rival);
        bench_number(f->rival_value, " ratio=");
        bench_number(f->ratio, " ");
    } else { printf("- rival_value=- ratio=- "); }
    printf("kernel=%s ", bench_state.kernel);
    if (limit > 0) { printf("peak=%s share=%.3f\n", !bench_state.on_device ? cpu_peaks[peak] : tf32 && peak == BENCH_FMA ? "tf32" : device_peaks[peak], f->peak_rate / limit); }
    else { printf("peak=- share=-\n"); }
    bench_counts_print(f->name);
    fflush(stdout);
}
/* cuda_MATH or cuda_MATH_KERNELS, as the environment has them. */
static const char *bench_device_kernel(void) {
    static char name[64];
    const char *math = getenv("TT_CUDA_MATH"), *kernels = getenv("TT_CUDA_KERNELS");
    snprintf(name, sizeof name, "cuda_%s%s%s", math && math[0] ? math : "f32", kernels && kernels[0] ? "_" : "", kernels ? kernels : "");
    return name;
}
static tt_context *bench_context(int n_threads) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.n_threads = n_threads;
    ctx = tt_create(&desc);
    if (!ctx || tt_error_status(ctx) != TT_OK) {
        fprintf(stderr, "bench: %s\n", tt_error(ctx));
        exit(1);
    }
    bench_state.on_device = tt_backend_get(ctx) != tt_cpu_backend();
    bench_state.ctx = ctx;
    bench_state.kernel = bench_state.on_device ? bench_device_kernel() : tt_kernel(ctx);
    return ctx;
}
BENCH_MAYBE static void bench_check(tt_context *ctx, int good) {
    if (good) { return; }
    fprintf(stderr, "bench: %s\n", tt_error(ctx));
    exit(1);
}
/* Floats in the context's memory; on a device, where there are billions of them, the first 2^20 over and over. */
BENCH_MAYBE static float *bench_floats(tt_context *ctx, size_t n) {
    const tt_backend *backend = tt_backend_get(ctx);
    size_t drawn = bench_state.on_device && n > (1u << 20) ? (size_t)1 << 20 : n, i;
    float *x = (float *)tt_alloc(ctx, drawn, sizeof *x), *there = x;
    bench_check(ctx, x != NULL);
    for (i = 0; i < drawn; i++) { x[i] = (float)((i * 2654435761u >> 7) % 2001) * 1e-3f - 1.0f; }
    if (!bench_state.on_device) { return x; }
    there = (float *)backend->alloc(ctx, n * sizeof *x);
    bench_check(ctx, there && backend->upload(ctx, there, x, drawn * sizeof *x) == TT_OK);
    tt_free(ctx, x, drawn, sizeof *x);
    for (i = drawn; i < n; i += drawn) { bench_check(ctx, backend->copy(ctx, there + i, there, (n - i < drawn ? n - i : drawn) * sizeof *x) == TT_OK); }
    return there;
}
BENCH_MAYBE static void bench_floats_free(tt_context *ctx, const float *x, size_t n) {
    if (!bench_state.on_device) { tt_free(ctx, (void *)(uintptr_t)x, n, sizeof *x); }
    else { tt_backend_get(ctx)->free(ctx, (void *)(uintptr_t)x, n * sizeof *x); }
}
/* Until a device has done all that it was given. */
BENCH_MAYBE static void bench_sync(tt_context *ctx) { bench_check(ctx, tt_backend_get(ctx)->sync(ctx) == TT_OK); }

#ifdef TT_CUDA
static int bench_small(void) { return getenv("BENCH_SMALL") != NULL; }
/* GFLOP/s of the best of several products. */
static double bench_device_product(tt_context *ctx, tt_cuda_math math, tt_gemm_args *g) {
    double best = 0, begin, rate;
    int run;
    bench_check(ctx, tt_cuda_set(ctx, math, TT_CUDA_FAST) == TT_OK);
    for (run = 0; run < 10; run++) {
        bench_sync(ctx);
        begin = tt_clock();
        bench_check(ctx, tt_backend_get(ctx)->gemm(ctx, g) == TT_OK);
        bench_sync(ctx);
        rate = 2e-9 * g->m * g->n * g->k / (tt_clock() - begin);
        if (rate > best) { best = rate; }
    }
    return best;
}
static double bench_device_copy(tt_context *ctx, float *to, const float *from) {
    const size_t bytes = bench_small() ? 4096 : READ_BYTES;
    double best = 0, begin, rate;
    int run;
    for (run = 0; run < 10; run++) {
        bench_sync(ctx);
        begin = tt_clock();
        bench_check(ctx, tt_backend_get(ctx)->copy(ctx, to, from, bytes) == TT_OK);
        bench_sync(ctx);
        rate = 2e-9 * (double)bytes / (tt_clock() - begin);
        if (rate > best) { best = rate; }
    }
    return best;
}
static void bench_device_name(char *name, size_t size) {
    FILE *smi = popen("nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null", "r");
    if (!smi || !fgets(name, (int)size, smi)) { snprintf(name, size, "unknown"); }
    name[strcspn(name, "\n")] = 0;
    if (smi) { pclose(smi); }
}
/* The limits of the device in the place of the CPU's, in the precision of the figures. */
static void bench_device_limits(void) {
    tt_context *ctx = bench_context(1);
    const int side = bench_small() ? 64 : PEAK_SIDE;
    size_t n = (size_t)side * (size_t)side;
    float *a = bench_floats(ctx, n), *b = bench_floats(ctx, n), *c = bench_floats(ctx, n);
    double rates[3], copy = bench_device_copy(ctx, a, b);
    tt_gemm_args g = TT_INIT;
    char name[128];
    int math;
    g.m = g.n = g.k = g.lda = g.ldb = g.ldc = side;
    g.transpose_b = 1;
    g.a = a;
    g.b = b;
    g.c = c;
    for (math = 0; math < 3; math++) { rates[math] = bench_device_product(ctx, (tt_cuda_math)math, &g); }
    bench_device_name(name, sizeof name);
    printf("DEVICE name=\"%s\" f32=%.0f tf32=%.0f bf16=%.0f unit=GFLOP/s copy=%.0f unit=GB/s\n", name, rates[TT_CUDA_F32], rates[TT_CUDA_TF32], rates[TT_CUDA_BF16], copy);
    bench_state.limits[0].rate[BENCH_FMA] = rates[strstr(bench_state.kernel, "tf32") ? TT_CUDA_TF32 : TT_CUDA_F32];
    bench_state.limits[0].rate[BENCH_BF16] = rates[TT_CUDA_BF16];
    bench_state.limits[0].rate[BENCH_READ] = copy;
    bench_state.limits[1] = bench_state.limits[0];
    bench_floats_free(ctx, a, n);
    bench_floats_free(ctx, b, n);
    bench_floats_free(ctx, c, n);
    tt_destroy(ctx);
}
/* On a device the threads of the CPU make no difference: one, unless asked. */
static int bench_device_main(void (*run)(int n_threads), int n_threads) {
    tt_destroy(bench_context(1));
    if (!bench_state.on_device) { return 0; }
    bench_state.n_threads = bench_state.first_threads = n_threads > 0 ? n_threads : 1;
    bench_device_limits();
    fflush(stdout);
    run(bench_state.n_threads);
    return 1;
}
#endif
/* Measures the limits and calls run for each number of threads; returns main's status. */
static int bench_main(int argc, char **argv, void (*run)(int n_threads)) {
    int asked = argc > 1 ? atoi(argv[1]) : 0, at;
    if (argc > 3 || asked < 0 || asked > BENCH_MAX_THREADS || (asked == 0 && argc > 1 && strcmp(argv[1], "0") != 0)) {
        fprintf(stderr, "usage: %s [THREADS [PART]]   THREADS 0..%d, 0 = one, then one per processor\n", argv[0], (int)BENCH_MAX_THREADS);
        return 2;
    }
    bench_state.n_threads = asked > 0 ? asked : bench_cores();
    bench_state.first_threads = asked > 0 ? asked : 1;
    bench_state.part = argc > 2 ? argv[2] : NULL;
    bench_machine_print();
#ifdef TT_CUDA
    if (bench_device_main(run, asked)) { return 0; }
#endif
    for (at = bench_state.first_threads;; at = bench_state.n_threads) {
        bench_limits *limits = &bench_state.limits[at == bench_state.n_threads];
        *limits = bench_limits_measure(at);
        printf("LIMIT threads=%d fma=%.1f bf16=%.1f unit=GFLOP/s read=%.1f unit=GB/s\n", at, limits->rate[BENCH_FMA], limits->rate[BENCH_BF16], limits->rate[BENCH_READ]);
        if (at == bench_state.n_threads) { break; }
    }
    fflush(stdout);
    for (at = bench_state.first_threads;; at = bench_state.n_threads) {
        run(at);
        if (at == bench_state.n_threads) { break; }
    }
    return 0;
}
#endif
