/* tt_test.h - the test harness: one header, C99 and C++11. A test file is
 *
 *     #define THINKTUNING_IMPLEMENTATION       (only if it tests what is private; else it is linked with an object)
 *     #include "../thinktuning.h"
 *     #include "tt_test.h"
 *
 *     TT_TEST(json_numbers) {
 *         tt_context *ctx = tt_create(NULL);
 *         TT_REQUIRE(ctx != NULL);                              (leaves the test if false)
 *         TT_CHECK_INT(tt_json_number(NULL, "x", 7.0), 7);      (notes a failure and goes on)
 *         tt_destroy(ctx);
 *     }
 *
 *     TT_MAIN(json_numbers)
 *
 * Checks, usable in helper functions too:
 *     TT_CHECK(condition)                TT_CHECK_INT(a, b)           TT_CHECK_NEAR(a, b, tolerance)
 *     TT_CHECK_STR(a, b)                 TT_CHECK_CONTAINS(text, part)
 *     TT_CHECK_BYTES(a, b, n_bytes)      TT_CHECK_OK(ctx, status)     prints tt_error(ctx) if it is not TT_OK
 * Only directly in a TT_TEST, because they return from it:
 *     TT_REQUIRE(condition)              TT_SKIP("why")
 * Helpers:
 *     tt_test_data("models/x")   path of a data file under the environment's TT_DATA, else ../shared/data,
 *                                or NULL if it is not there (then TT_SKIP); valid for the next 7 calls
 *     tt_test_tmp("name")        path of a scratch file, build/tmp/name; the folder is made; same lifetime
 *     tt_test_disk(bytes)        0 where the system cannot (then TT_SKIP); else no file may grow beyond so many bytes, as on a
 *                                full disk, until tt_test_disk(-1). Print nothing meanwhile
 *     tt_test_memory m = tt_test_memory_none();  desc.allocator = tt_test_allocator(&m);
 *         m.fail_at = n   the n-th allocation (from 1) fails, as does each later one if m.fail_all is set
 *         m.calls         allocations so far      m.live_blocks, m.live_bytes   not yet freed
 *         m.wrong_sizes   frees with another size than allocated
 *         TT_CHECK_NO_LEAK(m)   nothing live, no wrong size
 *     tt_test_write(ctx, &x[i], 3), tt_test_read(ctx, &x[i])   one value of a tensor's data or gradient, wherever it lives
 *     tt_test_same(a, b)         whether two tensors hold the same bytes
 *     TT_CHECK_ALIKE(a, b, n, bits)   n floats: the same bits, or, if bits is 0, near to 1e-4 of 1 + the value
 *     tt_test_bits()             whether the kernels promise bits: on a GPU the fast ones do not, since cuBLASLt adds in an order
 *                                that it chooses by the shape of a product
 *     tt_test_emulated()         whether the device is emulated, and hundreds of steps would take minutes
 *     tt_test_exhaustive()       whether to run the long sweeps: TT_EXHAUSTIVE=1, as make check, test-kernels and CI do
 * Run: build/test_x [part of a test name]. Lines are "ok name", "FAIL name", "skip name: why", with the processor's seconds of
 * a test that takes half a one or more; the last one is "N passed, N failed" and the exit status is 1 if any test failed. */
#ifndef TT_TEST_H
#define TT_TEST_H

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#ifdef _WIN32
#include <direct.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <sys/resource.h>
#define TT_TEST_POSIX 1
#endif

typedef struct tt_test_state { int failures, skipped, shortened; } tt_test_state;

/* One state per test file; a function, so that a file that does not use it draws no warning. */
static inline tt_test_state *tt_test_now(void) {
    static tt_test_state state;
    return &state;
}

static inline int tt_test_note(int good, const char *file, int line, const char *text) {
    if (!good) {
        printf("  %s:%d: %s\n", file, line, text);
        tt_test_now()->failures++;
    }
    return good;
}

static inline int tt_test_int(long long a, long long b, const char *file, int line, const char *text) {
    if (a != b) printf("  %lld is not %lld\n", a, b);
    return tt_test_note(a == b, file, line, text);
}

/* Equal infinities are near; NaN is near to nothing. */
static inline int tt_test_near(double a, double b, double tolerance, const char *file, int line, const char *text) {
    int good = fabs(a - b) <= tolerance || (isinf(a) && isinf(b) && (a > 0) == (b > 0));
    if (!good) printf("  %.9g and %.9g differ by %.3g, allowed %.3g\n", a, b, fabs(a - b), tolerance);
    return tt_test_note(good, file, line, text);
}

static inline int tt_test_str(const char *a, const char *b, const char *file, int line, const char *text) {
    int good = a && b ? strcmp(a, b) == 0 : a == b;
    if (!good) printf("  \"%s\"\n  is not\n  \"%s\"\n", a ? a : "(null)", b ? b : "(null)");
    return tt_test_note(good, file, line, text);
}

static inline int tt_test_contains(const char *a, const char *part, const char *file, int line, const char *text) {
    int good = a && part && strstr(a, part) != NULL;
    if (!good) printf("  \"%s\"\n  does not contain\n  \"%s\"\n", a ? a : "(null)", part ? part : "(null)");
    return tt_test_note(good, file, line, text);
}

static inline int tt_test_bytes(const void *a, const void *b, size_t n, const char *file, int line, const char *text) {
    const unsigned char *p = (const unsigned char *)a, *q = (const unsigned char *)b;
    size_t i = 0;
    if (!p || !q) return tt_test_note(n == 0, file, line, text);
    while (i < n && p[i] == q[i]) i++;
    if (i < n) printf("  byte %lu of %lu: %02x is not %02x\n", (unsigned long)i, (unsigned long)n, p[i], q[i]);
    return tt_test_note(i == n, file, line, text);
}

#define TT_TEST(name) static void name(void)
#define TT_CHECK(condition) tt_test_note((condition) ? 1 : 0, __FILE__, __LINE__, #condition)
#define TT_CHECK_INT(a, b) tt_test_int((long long)(a), (long long)(b), __FILE__, __LINE__, #a " == " #b)
#define TT_CHECK_NEAR(a, b, tolerance) \
    tt_test_near((double)(a), (double)(b), (double)(tolerance), __FILE__, __LINE__, #a " near " #b)
#define TT_CHECK_STR(a, b) tt_test_str(a, b, __FILE__, __LINE__, #a " equals " #b)
#define TT_CHECK_CONTAINS(text, part) tt_test_contains(text, part, __FILE__, __LINE__, #text " contains " #part)
#define TT_CHECK_BYTES(a, b, n_bytes) tt_test_bytes(a, b, n_bytes, __FILE__, __LINE__, #a " has the bytes of " #b)
#define TT_REQUIRE(condition)             \
    do {                                  \
        if (!TT_CHECK(condition)) return; \
    } while (0)
#define TT_SKIP(why)                    \
    do {                                \
        printf("skip %s: %s\n", __func__, why); \
        tt_test_now()->skipped = 1;     \
        return;                         \
    } while (0)

/* Whether the environment's TT_EXHAUSTIVE asks for the long sweeps too; on a GPU they are short and always run. */
static inline int tt_test_exhaustive(void) {
#if defined(TT_TEST_CUDA) && !defined(TT_TEST_EMULATED)
    return 1;
#else
    const char *wish = getenv("TT_EXHAUSTIVE");
    if (wish && wish[0] && strcmp(wish, "0") != 0) return 1;
    tt_test_now()->shortened = 1;
    return 0;
#endif
}

#ifdef TT_TEST_CUDA
enum { TT_TEST_DEVICE = 1 };       /* whether contexts are on a device */
#else
enum { TT_TEST_DEVICE = 0 };
#endif

static inline int tt_test_emulated(void) {
#ifdef TT_TEST_EMULATED
    return 1;
#else
    return 0;
#endif
}

static inline int tt_test_bits(void) {
#ifdef TT_TEST_CUDA
    const char *kernels = getenv("TT_CUDA_KERNELS");
    return !kernels || strcmp(kernels, "fast") != 0;
#else
    return 1;
#endif
}

static inline int tt_test_alike(const float *a, const float *b, size_t n, int bits, const char *file, int line, const char *text) {
    size_t i = 0;
    if (bits || !a || !b) return tt_test_bytes(a, b, n * sizeof *a, file, line, text);
    while (i < n && fabs((double)a[i] - (double)b[i]) <= 1e-4 * (1.0 + fabs((double)b[i]))) i++;
    if (i < n) printf("  value %lu of %lu: %.9g is not near %.9g\n", (unsigned long)i, (unsigned long)n, (double)a[i], (double)b[i]);
    return tt_test_note(i == n, file, line, text);
}
#define TT_CHECK_ALIKE(a, b, n, bits) tt_test_alike(a, b, n, bits, __FILE__, __LINE__, #a " is alike " #b)

/* ---- data and scratch files ---- */

static inline char *tt_test_buffer(void) {
    static char buffers[8][1024];
    static unsigned next;
    return buffers[next++ % 8];
}

static inline const char *tt_test_data(const char *path) {
    const char *roots[3];
    char *out = tt_test_buffer();
    struct stat info;
    int i;
    roots[0] = getenv("TT_DATA");
    roots[1] = "../shared/data";
    roots[2] = "../shared";
    for (i = 0; i < 3; i++) {
        if (!roots[i] || snprintf(out, 1024, "%s/%s", roots[i], path) >= 1024) continue;
        if (stat(out, &info) == 0) return out;
    }
    return NULL;
}

static inline void tt_test_mkdir(const char *path) {
#ifdef _WIN32
    _mkdir(path);
#else
    if (mkdir(path, 0777) != 0 && errno != EEXIST) printf("  cannot make %s: %s\n", path, strerror(errno));
#endif
}

static inline const char *tt_test_tmp(const char *name) {
    char *out = tt_test_buffer();
    tt_test_mkdir("build");
    tt_test_mkdir("build/tmp");
    snprintf(out, 1024, "build/tmp/%s", name);
    return out;
}

static inline int tt_test_disk(long bytes) {
#ifdef TT_TEST_POSIX
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0) return 0;
    signal(SIGXFSZ, SIG_IGN);
    fflush(stdout);
    limit.rlim_cur = bytes < 0 ? limit.rlim_max : (rlim_t)bytes;
    return setrlimit(RLIMIT_FSIZE, &limit) == 0;
#else
    (void)bytes;
    return 0;
#endif
}

/* ---- an allocator that counts, checks and fails ---- */

typedef struct tt_test_memory {
    long calls, fail_at, live_blocks, wrong_sizes;
    size_t live_bytes;
    int fail_all;
} tt_test_memory;

static inline tt_test_memory tt_test_memory_none(void) {
    tt_test_memory memory;
    memset(&memory, 0, sizeof memory);
    return memory;
}

#ifdef THINKTUNING_H
/* Bytes of the context's tensors, wherever they live. */
static inline size_t tt_test_bytes_used(const tt_context *ctx) {
#ifdef TT_TEST_CUDA
    return tt_cuda_memory_get(ctx).current_bytes;
#else
    return tt_memory_get(ctx).current_bytes;
#endif
}

/* Each block is preceded by 64 bytes whose first hold its size; 64 keeps the alignment of malloc. */
static inline void *tt_test_alloc(void *user, size_t bytes) {
    tt_test_memory *memory = (tt_test_memory *)user;
    unsigned char *block;
    memory->calls++;
    if (memory->fail_at && (memory->calls == memory->fail_at || (memory->fail_all && memory->calls > memory->fail_at)))
        return NULL;
    block = bytes < SIZE_MAX - 64 ? (unsigned char *)malloc(bytes + 64) : NULL;
    if (!block) return NULL;
    memcpy(block, &bytes, sizeof bytes);
    memset(block + 64, 0xa5, bytes);   /* whoever reads memory that was never written meets junk */
    memory->live_blocks++;
    memory->live_bytes += bytes;
    return block + 64;
}

static inline void tt_test_free(void *user, void *data, size_t bytes) {
    tt_test_memory *memory = (tt_test_memory *)user;
    unsigned char *block = (unsigned char *)data - 64;
    size_t was;
    if (!data) return;
    memcpy(&was, block, sizeof was);
    if (was != bytes) {
        printf("  free of %lu bytes that were allocated as %lu\n", (unsigned long)bytes, (unsigned long)was);
        memory->wrong_sizes++;
    }
    memory->live_blocks--;
    memory->live_bytes -= was;
    free(block);
}

static inline tt_allocator tt_test_allocator(tt_test_memory *memory) {
    tt_allocator allocator;
    allocator.alloc = tt_test_alloc;
    allocator.free = tt_test_free;
    allocator.user = memory;
    return allocator;
}

static inline int tt_test_ok(tt_context *ctx, tt_status status, const char *file, int line, const char *text) {
    if (status != TT_OK) printf("  %s: %s\n", tt_status_name(status), tt_error(ctx));
    return tt_test_note(status == TT_OK, file, line, text);
}
#define TT_CHECK_OK(ctx, status) tt_test_ok(ctx, status, __FILE__, __LINE__, #status)
static inline void tt_test_write(tt_context *ctx, float *at, float value) {
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->upload(ctx, at, &value, sizeof value));
}

static inline float tt_test_read(tt_context *ctx, const float *at) {
    float value = (float)NAN;
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->download(ctx, &value, at, sizeof value));
    return value;
}

static inline int tt_test_same(const tt_tensor *a, const tt_tensor *b) {
    float *x = (float *)malloc(2 * a->size * sizeof *x);
    int same = x && a->size == b->size && tt_tensor_get(a, x) == TT_OK && tt_tensor_get(b, x + a->size) == TT_OK &&
               memcmp(x, x + a->size, a->size * sizeof *x) == 0;
    free(x);
    return same;
}

#define TT_CHECK_NO_LEAK(memory)                \
    do {                                        \
        TT_CHECK_INT((memory).live_blocks, 0);  \
        TT_CHECK_INT((memory).wrong_sizes, 0);  \
    } while (0)

/* With TT_TEST_CUDA every context of the test is on the GPU (make cuda builds build/cuda/test_x so). Tests compare bits, which
 * only some of its kernels promise: own, unless the environment asks for others. */
#ifdef TT_TEST_CUDA
static inline tt_context *tt_test_create(const tt_desc *desc) {
    const char *kernels = getenv("TT_CUDA_KERNELS");
    tt_desc d;
    tt_context *ctx;
    memset(&d, 0, sizeof d);
    if (desc) d = *desc;
    if (!d.backend) d.backend = tt_cuda_backend(0);
    ctx = tt_create(&d);
    if (ctx && d.backend == tt_cuda_backend(0) && tt_error_status(ctx) == TT_OK && (!kernels || !kernels[0])) {
        tt_cuda_set(ctx, TT_CUDA_F32, TT_CUDA_OWN);
    }
    return ctx;
}
/* 0 and a visible line if there is none to test. */
static inline int tt_test_device(void) {
    tt_context *ctx = tt_test_create(NULL);
    int none = !ctx || tt_error_status(ctx) == TT_ERR_DEVICE;
    if (none) printf("skipped: no device (%s)\n0 passed, 0 failed\n", tt_error(ctx));
    tt_destroy(ctx);
    return !none;
}
#define tt_create tt_test_create
/* A copy of a tensor on the host, for reading; kept for the next 63 calls. */
static inline float *tt_test_floats(const tt_tensor *t) {
    static float *copies[64];
    static unsigned next;
    float **copy = &copies[next++ % 64];
    free(*copy);
    *copy = (float *)malloc(t->size * sizeof(float));
    if (*copy && tt_tensor_get(t, *copy) != TT_OK) printf("  tensor not read: %s\n", tt_error(t->ctx));
    return *copy;
}
#undef TT_F
#define TT_F(tensor) tt_test_floats(tensor)
#endif
#endif

/* ---- running ---- */

typedef void (*tt_test_fn)(void);

/* What the process has used of the processor, in seconds; 0 where the system does not say. */
static inline double tt_test_seconds(void) {
#ifdef TT_TEST_POSIX
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used) != 0) return 0;
    return (double)used.ru_utime.tv_sec + 1e-6 * (double)used.ru_utime.tv_usec;
#else
    return 0;
#endif
}

/* names is the text of the macro's arguments, "a, b, c", in the order of tests. */
static inline int tt_test_run(const char *names, const tt_test_fn *tests, int n, const char *filter) {
    int i, passed = 0, failed = 0;
    for (i = 0; i < n; i++) {
        char name[128], took[32] = "";
        double seconds = tt_test_seconds();
        size_t length;
        names += strspn(names, ", \t\n");
        length = strcspn(names, ", \t\n");
        snprintf(name, sizeof name, "%.*s", (int)length, names);
        names += length;
        if (filter && !strstr(name, filter)) continue;
        tt_test_now()->failures = tt_test_now()->skipped = 0;
        tests[i]();
        seconds = tt_test_seconds() - seconds;
        if (seconds >= 0.5) snprintf(took, sizeof took, " (%.1f s)", seconds);
        if (tt_test_now()->failures) {
            failed++;
            printf("FAIL %s%s\n", name, took);
        } else if (!tt_test_now()->skipped) {
            passed++;
            printf("ok %s%s\n", name, took);
        }
        fflush(stdout);
    }
    if (tt_test_now()->shortened) printf("skipped in part: long sweeps (TT_EXHAUSTIVE=1 runs them)\n");
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}

#ifndef TT_TEST_CUDA
static inline int tt_test_device(void) { return 1; }
#endif
#define TT_MAIN(...)                                                                           \
    int main(int argc, char **argv) {                                                          \
        static const tt_test_fn tests[] = {__VA_ARGS__};                                       \
        if (!tt_test_device()) return 0;                                                       \
        return tt_test_run(#__VA_ARGS__, tests, (int)(sizeof tests / sizeof tests[0]),         \
                           argc > 1 ? argv[1] : NULL);                                         \
    }

#endif
