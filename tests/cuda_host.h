/* cuda_host.h - runs the kernels of tt_cuda.cu on a CPU, so that their arithmetic, indices and bounds can be tested
 * where there is neither a GPU nor nvcc. Include it after thinktuning.h and before tt_cuda.cu, with TTI_CUDA_HOST defined.
 *
 * The threads of a block are fibers (POSIX ucontext) that run until they meet a barrier; blocks run one after the
 * other. Shared memory is static (declared) or made for each block and filled with NaN (dynamic). A warp's exchanges
 * (shuffles, ballots, mma) go through slots between two barriers. mma is computed from the fragments by the layouts of
 * the PTX manual, so a wrong index map gives wrong numbers; so is ldmatrix from its lines. A copy by cp.async takes place
 * when its thread waits for it, and what it will write is NaN until then. cuBLASLt is a naive column-major product.
 *
 * What it reports (host_fault, which fails the test): a barrier that not all threads reach; a copy in the wrong
 * direction, beyond its block or with overlap; a host pointer passed to a kernel; an mma operand that was not rounded;
 * lines of ldmatrix in one bank; an asynchronous copy that is not aligned, beyond its memory, or never waited for;
 * memory made, freed or read from where it is not pinned while a stream is captured. What is captured runs when its graph
 * is launched, with the arguments as they were and the memory as it is then. host.capture_breaks: number of the call
 * that CUDA refuses in each capture, 0 = none; host.fail_capture, host.refuse_update, host.fail_instantiate and
 * host.fail_graph_launch as named.
 * With host.fenced set before a context opens, device memory can only be touched while a kernel or a copy runs: code
 * that reads a device pointer on the host dies. host.order: threads and blocks run upwards, downwards or shuffled; a
 * missing barrier changes results between them. host.idle: all is checked and counted, nothing done, so that a large
 * model's step can be counted. host.limit: bytes of device memory. More than 48 KB of shared memory has to be allowed for a kernel first.
 *
 * Harsher than it need be: sums of mma are truncated, as the hardware's are; cuBLASLt's stand-in rounds factors to TF32
 * where it is told that it may, adds in an order that depends on the number of rows, so that a row's bits depend on the
 * rows beside it, and its GELU is off by up to 5e-4, as that of an approximated tanh is.
 *
 * Several host threads may call it, each with a context of its own: one call at a time. What it cannot see: warps that run
 * at once, memory-model effects, launch limits (registers, real sizes), speed. */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H
#include <functional>
#include <map>
#include <math.h>
#include <mutex>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#define HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HOST_ASAN 1
#endif
#endif
#ifdef HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- the machine ---- */
#define HOST_THREADS 1024
#define HOST_STACK ((size_t)1 << 16)
#define HOST_REGION ((size_t)1 << 38)       /* of addresses; memory is taken as it is touched */
#define HOST_HUGE ((size_t)1 << 21)
#define HOST_FREE_SHARED 49152              /* that a block gets without asking */
struct host_barrier { unsigned arrived, generation; };
struct host_fiber { ucontext_t context; jmp_buf jump; char *stack; void *fake_stack; int done; const host_barrier *waits; unsigned generation, exchanges; };
enum { HOST_KERNEL, HOST_COPY, HOST_SET, HOST_PRODUCT };
struct host_node { int kind; std::function<void()> run; };
typedef std::vector<host_node> host_nodes;
struct host_copy { float *to; const float *from; int n; };
struct host_machine {
    int order, fenced, idle, n_devices, capability;
    int fail_capture, refuse_update, fail_instantiate, fail_graph_launch, fail_free, refuse_algorithms, refuse_gelu;
    long capture_breaks, graphs, instantiated, updated, graph_launches, heuristics;      /* graphs: that live */
    std::map<char *, size_t> pinned;
    std::map<const void *, size_t> allowed;    /* shared memory, by kernel */
    std::map<size_t, std::vector<char *> > spare;      /* freed pieces of the region, by size */
    size_t limit, used, shared_limit;
    long allocations, fail_at, faults, products, activations;      /* products: of cuBLASLt, and with its GELU */
    long done[4];                              /* calls by kind, those of graphs included */
    size_t set_bytes;                          /* by cudaMemsetAsync */
    std::map<char *, size_t> blocks;           /* device memory    */
    char *mapped, *region;                     /* fenced memory */
    size_t region_used;
    host_fiber fibers[HOST_THREADS];
    jmp_buf scheduler;
    void *scheduler_stack;                     /* its bounds, for the address sanitizer */
    const void *scheduler_bottom;
    size_t scheduler_size;
    unsigned now, n_threads;
    host_barrier block, warps[HOST_THREADS / 32];
    uint32_t slots[HOST_THREADS][2][32];
    unsigned char *shared;
    size_t shared_bytes;
    std::vector<host_copy> copies[HOST_THREADS];      /* that each thread has sent and not waited for */
    void (*body)(void *call);
    void *call;
};
static host_machine host;
static std::recursive_mutex host_mutex;
#define HOST_ONE_CALL std::lock_guard<std::recursive_mutex> one_call(host_mutex)
static thread_local int host_error;            /* of cudaGetLastError */

/* A stream, and what it captures. */
struct host_stream { int capturing, broken; long captured; host_nodes capture; };
typedef host_stream *cudaStream_t;

static void host_fault(const char *what) {
    if (host.faults++ < 10) { printf("  cuda_host: %s\n", what); }
}
static void host_work(int kind, const std::function<void()> &work) {
    host.done[kind]++;
    if (!host.idle) { work(); }
}
/* Runs the work now, or at the launch of the graph that is captured; an error of CUDA. */
static int host_do(cudaStream_t stream, int kind, const std::function<void()> &work) {
    host_node node;
    if (!stream->capturing) { host_work(kind, work); return 0; }
    if (host.capture_breaks && ++stream->captured == host.capture_breaks) { stream->broken = 1; }
    if (stream->broken) { return host_error = 901; }      /* cudaErrorStreamCaptureInvalidated */
    node.kind = kind;
    node.run = work;
    stream->capture.push_back(node);
    return 0;
}
static void host_switch_begin(void **fake_stack, const void *bottom, size_t size) {
#ifdef HOST_ASAN
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#else
    (void)fake_stack; (void)bottom; (void)size;
#endif
}
static void host_switch_end(void *fake_stack, const void **bottom, size_t *size) {
#ifdef HOST_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#else
    (void)fake_stack; (void)bottom; (void)size;
#endif
}
/* A fiber is made once, by makecontext; from then on setjmp and longjmp switch, without a system call. */
static void host_yield(host_fiber *me) {
    host_switch_begin(&me->fake_stack, host.scheduler_bottom, host.scheduler_size);
    if (_setjmp(me->jump) == 0) { _longjmp(host.scheduler, 1); }
    host_switch_end(me->fake_stack, &host.scheduler_bottom, &host.scheduler_size);
}
static void host_fiber_main(void) {
    host_switch_end(NULL, &host.scheduler_bottom, &host.scheduler_size);
    for (;;) {      /* once for each block */
        host.body(host.call);
        host.fibers[host.now].done = 1;
        host_yield(&host.fibers[host.now]);
    }
}
static void host_wait(host_barrier *barrier, unsigned size) {
    host_fiber *me = &host.fibers[host.now];
    if (++barrier->arrived == size) { barrier->arrived = 0; barrier->generation++; return; }
    me->waits = barrier;
    me->generation = barrier->generation;
    host_yield(me);
}
static void host_first_resume(host_fiber *f) {
    f->stack = (char *)malloc(HOST_STACK);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = HOST_STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, host_fiber_main, 0);
    host_switch_begin(&host.scheduler_stack, f->stack, HOST_STACK);
    setcontext(&f->context);
}
static void host_resume(unsigned i) {
    host_fiber *f = &host.fibers[i];
    host.now = i;
    threadIdx = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    if (_setjmp(host.scheduler) == 0) {
        if (!f->stack) { host_first_resume(f); }
        host_switch_begin(&host.scheduler_stack, f->stack, HOST_STACK);
        _longjmp(f->jump, 1);
    }
    host_switch_end(host.scheduler_stack, NULL, NULL);
}
static void host_run_block(void) {
    unsigned n = host.n_threads, i, k, left = n, progress;
    memset(&host.block, 0, sizeof host.block);
    memset(host.warps, 0, sizeof host.warps);
    for (i = 0; i < n; i++) { host.fibers[i].done = 0; host.fibers[i].waits = NULL; host.fibers[i].exchanges = 0; }
    while (left > 0) {
        for (progress = 0, k = 0; k < n; k++) {
            i = host.order == 0 ? k : host.order == 1 ? n - 1 - k : (unsigned)(((uint64_t)k * 331 + 17) % n);      /* 331 is prime to every n here */
            host_fiber *f = &host.fibers[i];
            if (f->done || (f->waits && f->waits->generation == f->generation)) { continue; }
            progress = 1;
            host_resume(i);
            if (f->done) {
                left--;
                if (!host.copies[i].empty()) { host_fault("a thread ends before its copies do"); host.copies[i].clear(); }
            }
        }
        if (!progress) {
            printf("  cuda_host: threads wait at a barrier that others do not reach\n");
            exit(1);      /* the fibers are beyond repair */
        }
    }
}
/* The region is of huge pages where the system has them: to open and close thousands of small ones would be most of the
 * time. */
static void host_fence(int open) {
    const size_t used = (host.region_used + HOST_HUGE - 1) / HOST_HUGE * HOST_HUGE;
    if (host.region && used) { mprotect(host.region, used, open ? PROT_READ | PROT_WRITE : PROT_NONE); }
}
static int host_fits(const void *kernel, dim3 grid, dim3 threads, size_t shared) {
    unsigned n = threads.x * threads.y * threads.z;
    if (n == 0 || n > HOST_THREADS || n % 32 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || (shared > HOST_FREE_SHARED && shared > host.allowed[kernel])) {
        host_error = 9;      /* cudaErrorInvalidConfiguration */
        return 0;
    }
    return 1;
}
/* A permutation of 0 .. n-1: steps of a prime that does not divide n. */
static size_t host_shuffled(size_t k, size_t n) { return (k * (n % 7919 ? 7919 : 7907) + 17) % n; }
static void host_run(void (*body)(void *), void *call, dim3 grid, dim3 threads, size_t shared) {
    unsigned n = threads.x * threads.y * threads.z;
    host_fence(1);
    host.body = body;
    host.call = call;
    host.n_threads = n;
    gridDim = grid;
    blockDim = threads;
    for (size_t k = 0, blocks = (size_t)grid.x * grid.y * grid.z; k < blocks; k++) {
        size_t i = host.order == 0 ? k : host.order == 1 ? blocks - 1 - k : host_shuffled(k, blocks);
        blockIdx = dim3((unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y));
        host.shared_bytes = shared;
        if (shared) { host.shared = (unsigned char *)malloc(shared); memset(host.shared, 0xFF, shared); }
        host_run_block();
        free(host.shared);
        host.shared = NULL;
    }
    host_fence(0);
}

/* ---- what kernels call ---- */
#define TTI_GPU_UNROLL
#define TTI_GPU_UNROLL_TWO
#define TTI_GPU_ROLLED
#define TTI_DYNAMIC_SHARED(name) unsigned char *name = host.shared
static void __syncwarp(void) { host_wait(&host.warps[host.now / 32], 32); }
static void __syncthreads(void) { host_wait(&host.block, host.n_threads); }
/* A warp's exchange: every lane leaves `words` words, then all may read those of all. Two sets of slots take turns, so one
 * barrier is enough: a lane can be at most one exchange ahead. */
static uint32_t (*host_exchange(const void *value, size_t bytes, unsigned *set))[2][32] {
    host_fiber *me = &host.fibers[host.now];
    unsigned warp = host.now / 32;
    *set = me->exchanges++ % 2;
    memcpy(host.slots[host.now][*set], value, bytes);
    host_wait(&host.warps[warp], 32);
    return &host.slots[warp * 32];
}
template <class T> static T __shfl_xor_sync(unsigned, T value, int step) {
    unsigned set;
    uint32_t (*lanes)[2][32] = host_exchange(&value, sizeof value, &set);
    memcpy(&value, lanes[(host.now % 32) ^ (unsigned)step][set], sizeof value);
    return value;
}
template <class T> static T __shfl_sync(unsigned, T value, int lane) {
    unsigned set;
    uint32_t (*lanes)[2][32] = host_exchange(&value, sizeof value, &set);
    memcpy(&value, lanes[lane][set], sizeof value);
    return value;
}
template <class T> static T __shfl_up_sync(unsigned, T value, unsigned step) {
    unsigned set, lane = host.now % 32;
    uint32_t (*lanes)[2][32] = host_exchange(&value, sizeof value, &set);
    memcpy(&value, lanes[lane >= step ? lane - step : lane][set], sizeof value);
    return value;
}
static unsigned __ballot_sync(unsigned, int predicate) {
    unsigned set, bits = 0, i;
    uint32_t (*lanes)[2][32] = host_exchange(&predicate, sizeof predicate, &set);
    for (i = 0; i < 32; i++) { bits |= (unsigned)(lanes[i][set][0] != 0) << i; }
    return bits;
}
static int __ffs(int x) { return __builtin_ffs(x); }
static int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static uint32_t __float_as_uint(float x) { uint32_t bits; memcpy(&bits, &x, sizeof bits); return bits; }
static float __uint_as_float(uint32_t bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
template <class T, class U> static T min(T a, U b) { return a < (T)b ? a : (T)b; }

static uint32_t tti_gpu_tf32(float x) {      /* to the nearest, ties away from zero */
    uint32_t bits = __float_as_uint(x);
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & ~0x1FFFu;
}
static uint16_t tti_gpu_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
static uint32_t tti_gpu_bf16_pair(float first, float second) { return tti_gpu_bf16(first) | (uint32_t)tti_gpu_bf16(second) << 16; }
static float tti_gpu_exp2(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
static int host_in_shared(const void *p, size_t bytes) {
    const unsigned char *at = (const unsigned char *)p;
    return (uintptr_t)p % bytes == 0 && at >= host.shared && at + bytes <= host.shared + host.shared_bytes;
}
static int host_on_device(const void *p, size_t bytes);
/* cp.async: nothing is there before the thread has waited, and what was there is gone from the beginning. */
template <int BYTES> static void tti_gpu_copy(float *to, const float *from, int n) {
    const host_copy copy = {to, from, n};
    if (!host_in_shared(to, BYTES) || (uintptr_t)from % BYTES || n > BYTES || !host_on_device(from, (size_t)n)) { host_fault("an asynchronous copy that is not aligned, or beyond its memory"); return; }
    memset(to, 0xFF, BYTES);
    host.copies[host.now].push_back(copy);
    host.copies[host.now].back().n |= BYTES << 8;
}
static void tti_gpu_copied(void) {
    for (const host_copy &copy : host.copies[host.now]) {
        memset(copy.to, 0, (size_t)(copy.n >> 8));
        memcpy(copy.to, copy.from, (size_t)(copy.n & 0xFF));
    }
    host.copies[host.now].clear();
}
static int tti_gpu_thread(void) { return (int)threadIdx.x; }
/* ldmatrix, from the lines whose addresses the lanes give; the 8 lines of a matrix have to lie in different banks. */
template <int TURNED> static void tti_gpu_ldmatrix(uint32_t *r, const uint32_t *line) {
    const unsigned lane = host.now % 32, g = lane / 4, t = lane % 4;
    unsigned set;
    uint32_t (*lanes)[2][32] = host_exchange(&line, sizeof line, &set);
    if (!host_in_shared(line, 16)) { host_fault("ldmatrix is not aligned, or beyond shared memory"); return; }
    for (unsigned i = 0, banks = 0; i < 4; i++, banks = 0) {
        const uint16_t *lines[8];
        for (unsigned k = 0; k < 8; k++) {
            memcpy(&lines[k], lanes[8 * i + k][set], sizeof lines[k]);
            banks |= 1u << (uintptr_t)lines[k] / 16 % 8;
        }
        if (banks != 0xFF) { host_fault("ldmatrix meets a bank twice"); }
        r[i] = TURNED ? lines[2 * t][g] | (uint32_t)lines[2 * t + 1][g] << 16 : lines[g][2 * t] | (uint32_t)lines[g][2 * t + 1] << 16;
    }
}
/* To the float towards zero. */
static float host_truncated(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~(uint64_t)0x1FFFFFFF;
    memcpy(&x, &bits, sizeof bits);
    return (float)x;
}
/* D = A B + C from the fragments of 32 lanes. Of mma.m16n8k8 (TF32) lane 4g + t holds A[g + 8 (r % 2)][t + 4 (r / 2)] in
 * register r and B[t + 4r][g]; of m16n8k16 (BF16) pairs A[g + 8 (r % 2)][2t + 8 (r / 2) ..] and B[2t + 8r ..][g]. */
template <int MATH, int MI, int NI>
static void tti_gpu_mma(float c[MI][NI][4], const uint32_t a[MI][4], const uint32_t b[NI][2]) {
    struct { uint32_t a[MI][4], b[NI][2]; } mine;
    const unsigned bf16 = MATH == TT_CUDA_BF16, steps = bf16 ? 16 : 8;
    double rows[MI * 2][16], columns[16][NI * 2];      /* what this lane's results need of A and B */
    unsigned set;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    for (size_t i = 0; !bf16 && i < sizeof mine / 4; i++) {
        if (((uint32_t *)&mine)[i] & 0x1FFFu) { host_fault("an operand of mma is not TF32"); break; }
    }
    uint32_t (*lanes)[2][32] = host_exchange(&mine, sizeof mine, &set);
    for (unsigned k = 0; k < steps; k++) {
        const unsigned part = bf16 ? k % 8 / 2 : k % 4, reg = bf16 ? k / 8 : k / 4, shift = bf16 ? k % 2 * 16 : 0;
        const uint32_t mask = bf16 ? 0xFFFFu : 0xFFFFFFFFu;
        const unsigned raise = bf16 ? 16 : 0, g = host.now % 32 / 4, t = host.now % 4;
        const uint32_t *of_row = lanes[g * 4 + part][set];
        for (unsigned i = 0; i < MI * 2; i++) {
            rows[i][k] = (double)__uint_as_float((of_row[i / 2 * 4 + i % 2 + 2 * reg] >> shift & mask) << raise);
        }
        for (unsigned j = 0; j < NI * 2; j++) {
            const uint32_t *of_column = lanes[(2 * t + j % 2) * 4 + part][set];
            columns[k][j] = (double)__uint_as_float((of_column[MI * 4 + j / 2 * 2 + reg] >> shift & mask) << raise);
        }
    }
    for (unsigned i = 0; i < MI * 2; i++) {      /* this loop is most of the test's time */
        double sums[NI * 2];
        for (unsigned j = 0; j < NI * 2; j++) { sums[j] = (double)c[i / 2][j / 2][i % 2 * 2 + j % 2]; }
        for (unsigned k = 0; k < steps; k++) {
            for (unsigned j = 0; j < NI * 2; j++) { sums[j] += rows[i][k] * columns[k][j]; }
        }
        for (unsigned j = 0; j < NI * 2; j++) { c[i / 2][j / 2][i % 2 * 2 + j % 2] = host_truncated(sums[j]); }
    }
}

/* ---- device memory ---- */
static int host_on_device(const void *p, size_t bytes) {
    std::map<char *, size_t>::iterator i = host.blocks.upper_bound((char *)(uintptr_t)p);
    if (i == host.blocks.begin()) { return 0; }
    --i;
    return (const char *)p + bytes <= i->first + i->second;
}
static void host_check_pointer(const void *p) { if (p && !host_on_device(p, 1)) { host_fault("a kernel is given a host pointer"); } }
template <class T> static void host_check(T *const &p) { host_check_pointer((const void *)p); }
template <class T> static void host_check(const T &) {}
static void host_check(const tt_gemm_args &g) { host_check(g.a); host_check(g.b); host_check(g.packed_a); host_check(g.panels); host_check(g.bias); host_check(g.c); }
static void host_check(const tt_attention_args &a) {
    const void *all[] = {a.offsets, a.query_start, a.key_start, a.q, a.k, a.v, a.out, a.lse, a.dout, a.dq, a.dk, a.dv};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) { host_check_pointer(all[i]); }
}
static void host_check(const tt_sample_args &a) { host_check(a.logits); host_check(a.u); host_check(a.tokens); host_check(a.logprobs); }
static void host_check(const tt_adamw_args &a) { host_check(a.p); host_check(a.g); host_check(a.m); host_check(a.v); }

/* The call of a kernel with its arguments, as they are converted for it. */
template <class... P> struct host_call;
template <> struct host_call<> {
    template <class F, class... Done> void run(F kernel, Done... done) { kernel(done...); }
};
template <class P, class... Rest> struct host_call<P, Rest...> {
    P first;
    host_call<Rest...> rest;
    template <class F, class... Done> void run(F kernel, Done... done) { rest.run(kernel, done..., first); }
};
static inline void host_fill(host_call<> &) {}
template <class P, class... Rest, class A, class... More> static void host_fill(host_call<P, Rest...> &call, const A &first, const More &...more) {
    call.first = (P)first;
    host_check(call.first);
    host_fill(call.rest, more...);
}
template <class... P> struct host_job { void (*kernel)(P...); host_call<P...> call; };
template <class... P> static void host_body(void *job) {
    host_job<P...> *j = (host_job<P...> *)job;
    j->call.run(j->kernel);
}
template <class... P, class... A> static void host_launch(cudaStream_t stream, void (*kernel)(P...), dim3 grid, dim3 threads, size_t shared, const A &...arguments) {
    HOST_ONE_CALL;
    host_job<P...> job;
    job.kernel = kernel;
    host_fill(job.call, arguments...);
    if (!host_fits((const void *)kernel, grid, threads, shared)) { return; }
    host_do(stream, HOST_KERNEL, [=]() {
        host_job<P...> own = job;
        host_run(host_body<P...>, &own, grid, threads, shared);
    });
}
#define TTI_LAUNCH_NOW(cuda, kernel, grid, threads, shared, ...) (host_launch((cuda)->stream, kernel, grid, threads, shared, __VA_ARGS__))

/* ---- the runtime, as far as tt_cuda.cu calls it ---- */
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101, cudaErrorInvalidValue = 1,
       cudaErrorStreamCaptureUnsupported = 900, cudaErrorGraphExecUpdateFailure = 910, cudaErrorIllegalState = 401 };
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking = 1, cudaMemPoolAttrReleaseThreshold = 4, cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrMultiProcessorCount = 16 };
typedef char *cudaMemPool_t;
static const char *cudaGetErrorString(int error) {
    return error == cudaSuccess ? "no error" : error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
static int cudaGetLastError(void) { int error = host_error; host_error = 0; return error; }
static int cudaSetDevice(int device) {
    if (device < 0 || device >= host.n_devices) { return host_error = cudaErrorInvalidDevice; }
    return cudaSuccess;
}
static int cudaGetDeviceCount(int *n) { *n = host.n_devices; return host.n_devices ? cudaSuccess : host_error = cudaErrorNoDevice; }
static int cudaDeviceGetAttribute(int *value, int what, int device) {
    if (device < 0 || device >= host.n_devices) { return host_error = cudaErrorInvalidDevice; }
    *value = what == cudaDevAttrComputeCapabilityMajor ? host.capability : what == cudaDevAttrMultiProcessorCount ? 2 : (int)host.shared_limit;
    return cudaSuccess;
}
static int cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = new host_stream(); return cudaSuccess; }
static int cudaStreamDestroy(cudaStream_t stream) { delete stream; return cudaSuccess; }
static int cudaStreamSynchronize(cudaStream_t stream) {
    if (!stream->capturing) { return cudaSuccess; }
    stream->broken = 1;
    return host_error = cudaErrorStreamCaptureUnsupported;
}
static int cudaMallocHost(void **p, size_t bytes) { HOST_ONE_CALL; *p = malloc(bytes); host.pinned[(char *)*p] = bytes; return cudaSuccess; }
static int cudaFreeHost(void *p) { HOST_ONE_CALL; host.pinned.erase((char *)p); free(p); return cudaSuccess; }
static int cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) { static char only; *pool = &only; return cudaSuccess; }
static int cudaMemPoolSetAttribute(cudaMemPool_t, int, void *) { return cudaSuccess; }
static int cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
static int cudaMemGetInfo(size_t *free_bytes, size_t *all) { *all = host.limit; *free_bytes = host.limit - host.used; return cudaSuccess; }
/* Pieces of the region are whole pages; what was freed is taken again by those of its size. */
static size_t host_pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }
static char *host_piece(size_t bytes) {
    const size_t pages = host_pages(bytes);
    char *piece;
    if (!host.region) {
        host.mapped = (char *)mmap(NULL, HOST_REGION + HOST_HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (host.mapped == MAP_FAILED) { return NULL; }
        host.region = host.mapped + (HOST_HUGE - (uintptr_t)host.mapped % HOST_HUGE);
#ifdef MADV_HUGEPAGE
        madvise(host.region, HOST_REGION, MADV_HUGEPAGE);
#endif
    }
    std::vector<char *> &spare = host.spare[pages];
    if (!spare.empty()) { piece = spare.back(); spare.pop_back(); return piece; }
    if (pages > HOST_REGION - host.region_used) { return NULL; }
    piece = host.region + host.region_used;
    host.region_used += pages;
    return piece;
}
static int cudaMallocFromPoolAsync(void **p, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
    HOST_ONE_CALL;
    char *block;
    if (stream->capturing) { host_fault("memory is made inside a capture"); }
    host.allocations++;
    if (bytes > host.limit - host.used || (host.fail_at && host.allocations >= host.fail_at)) { return host_error = cudaErrorMemoryAllocation; }
    block = host.fenced ? host_piece(bytes) : (char *)malloc(bytes);
    if (!block) { return host_error = cudaErrorMemoryAllocation; }
    host_fence(1);
    if (!host.idle) { memset(block, 0xFF, bytes); }
    host_fence(0);
    host.blocks[block] = bytes;
    host.used += bytes;
    *p = block;
    return cudaSuccess;
}
static int cudaFreeAsync(void *p, cudaStream_t stream) {
    HOST_ONE_CALL;
    std::map<char *, size_t>::iterator i = host.blocks.find((char *)p);
    if (stream->capturing) { host_fault("memory is freed inside a capture"); }
    if (host.fail_free) { return host_error = cudaErrorInvalidValue; }
    if (i == host.blocks.end()) { host_fault("a free of what is no block"); return host_error = cudaErrorInvalidValue; }
    if (host.region) {
        host_fence(1);
        if (!host.idle) { memset(p, 0xFF, i->second); }      /* whoever still reads it meets NaN */
        host_fence(0);
        host.spare[host_pages(i->second)].push_back((char *)p);
    } else { free(p); }
    host.used -= i->second;
    host.blocks.erase(i);
    return cudaSuccess;
}
static int cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    HOST_ONE_CALL;
    if (!host_on_device(to, bytes)) { host_fault("memset outside of device memory"); return cudaErrorInvalidValue; }
    host.set_bytes += bytes;
    return host_do(stream, HOST_SET, [=]() {
        host_fence(1);
        memset(to, value, bytes);
        host_fence(0);
    });
}
static int host_is_pinned(const void *p) {
    std::map<char *, size_t>::iterator i = host.pinned.upper_bound((char *)(uintptr_t)p);
    return i != host.pinned.begin() && (--i, (const char *)p < i->first + i->second);
}
static int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream) {
    HOST_ONE_CALL;
    int on = host_on_device(to, bytes), off = host_on_device(from, bytes);
    if (on != (kind != cudaMemcpyDeviceToHost) || off != (kind != cudaMemcpyHostToDevice)) { host_fault("a copy in the wrong direction or beyond its block"); return cudaErrorInvalidValue; }
    if ((char *)to < (const char *)from + bytes && (const char *)from < (char *)to + bytes) { host_fault("a copy that overlaps"); }
    if (stream->capturing && kind != cudaMemcpyDeviceToDevice && !host_is_pinned(kind == cudaMemcpyHostToDevice ? from : to)) { host_fault("a copy inside a capture with memory that is not pinned"); }
    if (host.idle && kind == cudaMemcpyDeviceToHost) { memset(to, 0, bytes); }
    return host_do(stream, HOST_COPY, [=]() {
        host_fence(1);
        memmove(to, from, bytes);
        host_fence(0);
    });
}
/* Graphs: a list of calls in their order. */
typedef host_nodes *cudaGraph_t;
typedef host_nodes *cudaGraphExec_t;
typedef int cudaGraphExecUpdateResultInfo;
enum { cudaStreamCaptureModeRelaxed = 2 };
static int cudaStreamBeginCapture(cudaStream_t stream, int) {
    HOST_ONE_CALL;
    if (stream->capturing || host.fail_capture) { return host_error = cudaErrorIllegalState; }
    stream->capturing = 1;
    stream->broken = 0;
    stream->captured = 0;
    stream->capture.clear();
    return cudaSuccess;
}
static int cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    HOST_ONE_CALL;
    *graph = NULL;
    if (!stream->capturing) { return host_error = cudaErrorIllegalState; }
    stream->capturing = 0;
    if (stream->broken) { return host_error = 901; }
    *graph = new host_nodes(stream->capture);
    host.graphs++;
    return cudaSuccess;
}
static int cudaGraphDestroy(cudaGraph_t graph) { HOST_ONE_CALL; delete graph; host.graphs--; return cudaSuccess; }
static int cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
static int cudaGraphInstantiateWithFlags(cudaGraphExec_t *to, cudaGraph_t from, int) {
    HOST_ONE_CALL;
    if (host.fail_instantiate) { return host_error = cudaErrorMemoryAllocation; }
    *to = new host_nodes(*from);
    host.graphs++;
    host.instantiated++;
    return cudaSuccess;
}
static int cudaGraphExecUpdate(cudaGraphExec_t to, cudaGraph_t from, cudaGraphExecUpdateResultInfo *) {
    HOST_ONE_CALL;
    int same = to->size() == from->size() && !host.refuse_update;
    for (size_t i = 0; same && i < to->size(); i++) { same = (*to)[i].kind == (*from)[i].kind; }
    if (!same) { return host_error = cudaErrorGraphExecUpdateFailure; }
    *to = *from;
    host.updated++;
    return cudaSuccess;
}
static int cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    HOST_ONE_CALL;
    if (host.fail_graph_launch) { return host_error = cudaErrorMemoryAllocation; }
    for (size_t i = 0; i < graph->size(); i++) { host_work((*graph)[i].kind, (*graph)[i].run); }
    host.graph_launches++;
    return cudaSuccess;
}
template <class F> static int cudaFuncSetAttribute(F *kernel, int, int bytes) {
    HOST_ONE_CALL;
    if ((size_t)bytes > host.shared_limit) { return host_error = cudaErrorInvalidValue; }
    host.allowed[(const void *)kernel] = (size_t)bytes;
    return cudaSuccess;
}

/* ---- cuBLASLt: columns first, op on a stored matrix of rows x cols, leading dimension = step between columns ---- */
typedef int cublasStatus_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_INTERNAL_ERROR = 14 };
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
typedef enum { CUDA_R_32F, CUDA_R_16BF } cudaDataType_t;
typedef enum { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 } cublasComputeType_t;
typedef enum { CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS } cublasLtEpilogue_t;
typedef int cublasLtMatmulDescAttributes_t;
typedef int cublasLtMatmulPreferenceAttributes_t;
enum { CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
       CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD };
enum { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
struct host_matmul { cublasComputeType_t compute; cublasOperation_t a, b; cublasLtEpilogue_t epilogue; const float *bias; float *aux; int64_t aux_ld; };
struct host_layout { cudaDataType_t type; uint64_t rows, columns; int64_t ld; };
struct host_preference { uint32_t alignment[5]; };
enum { HOST_ALGORITHMS = 8 };
typedef host_matmul *cublasLtMatmulDesc_t;
typedef host_layout *cublasLtMatrixLayout_t;
typedef host_preference *cublasLtMatmulPreference_t;
typedef struct { uint32_t alignment[5], aux_alignment; int rank; host_layout a, b, c; } cublasLtMatmulAlgo_t;      /* what it was chosen for */
typedef struct { cublasLtMatmulAlgo_t algo; cublasStatus_t state; } cublasLtMatmulHeuristicResult_t;
typedef char *cublasLtHandle_t;
static int cublasLtCreate(cublasLtHandle_t *h) { *h = (char *)malloc(1); return 0; }
static int cublasLtDestroy(cublasLtHandle_t h) { free(h); return 0; }
static int cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute, cudaDataType_t) { *d = (host_matmul *)calloc(1, sizeof **d); (*d)->compute = compute; return 0; }
static int cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { free(d); return 0; }
static int cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int what, const void *value, size_t bytes) {
    void *to = what == CUBLASLT_MATMUL_DESC_TRANSA ? (void *)&d->a : what == CUBLASLT_MATMUL_DESC_TRANSB ? (void *)&d->b : what == CUBLASLT_MATMUL_DESC_EPILOGUE ? (void *)&d->epilogue
             : what == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? (void *)&d->bias : what == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER ? (void *)&d->aux : (void *)&d->aux_ld;
    memcpy(to, value, bytes);
    return 0;
}
static int cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t columns, int64_t ld) {
    *l = (host_layout *)calloc(1, sizeof **l);
    (*l)->type = type; (*l)->rows = rows; (*l)->columns = columns; (*l)->ld = ld;
    return ld >= (int64_t)rows ? 0 : CUBLAS_STATUS_INVALID_VALUE;
}
static int cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { free(l); return 0; }
static int cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) { *p = (host_preference *)calloc(1, sizeof **p); return 0; }
static int cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { free(p); return 0; }
static int cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, int what, const void *value, size_t) {
    if (what > 0) { memcpy(&p->alignment[what], value, sizeof(uint32_t)); }
    return 0;
}
static uint32_t host_alignment(const void *p) {
    uint32_t alignment = 256;
    while ((uintptr_t)p % alignment) { alignment /= 2; }
    return p ? alignment : 0;
}
static int cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t,
                                          cublasLtMatmulPreference_t p, int wanted, cublasLtMatmulHeuristicResult_t *results, int *found) {
    HOST_ONE_CALL;
    host.heuristics++;
    *found = 0;
    if (host.refuse_gelu && d->aux) { return CUBLAS_STATUS_NOT_SUPPORTED; }
    for (; *found < wanted && *found < HOST_ALGORITHMS; ++*found) {
        cublasLtMatmulHeuristicResult_t *result = &results[*found];
        memset(result, 0, sizeof *result);
        memcpy(result->algo.alignment, p->alignment, sizeof p->alignment);
        result->algo.aux_alignment = host_alignment(d->aux);
        result->algo.rank = *found;
        result->algo.a = *a;
        result->algo.b = *b;
        result->algo.c = *c;
    }
    return 0;
}
/* Element (row, column) of op(matrix), as the product takes it. */
static float host_matrix_at(const void *matrix, const host_layout *l, cublasOperation_t op, cublasComputeType_t compute, uint64_t row, uint64_t column) {
    uint64_t at = op == CUBLAS_OP_N ? row + column * (uint64_t)l->ld : column + row * (uint64_t)l->ld;
    if (l->type == CUDA_R_16BF) { return __uint_as_float((uint32_t)((const uint16_t *)matrix)[at] << 16); }
    float x = ((const float *)matrix)[at];
    return compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? __uint_as_float(tti_gpu_tf32(x)) : x;
}
/* In 4 or 8 chains, by the number of columns, which are our rows. */
static double host_dot(const float *x, const float *y, uint64_t k, uint64_t chains) {
    float sums[8] = {0};
    double sum = 0;
    uint64_t p, i;
    for (p = 0; p + chains <= k; p += chains) {
        for (i = 0; i < chains; i++) { sums[i] += x[p + i] * y[p + i]; }
    }
    for (; p < k; p++) { sums[0] += x[p] * y[p]; }
    for (i = 0; i < chains; i++) { sum += (double)sums[i]; }
    return sum;
}
static void host_product(const host_matmul *d, const void *a, const host_layout *la, const void *b, const host_layout *lb, float *out, uint64_t ld,
                         uint64_t m, uint64_t n, uint64_t k, double alpha, double beta) {
    uint64_t i, j, p;
    std::vector<float> rows(m * k), columns(n * k);
    host_fence(1);
    for (i = 0; i < m; i++) {
        for (p = 0; p < k; p++) { rows[i * k + p] = host_matrix_at(a, la, d->a, d->compute, i, p); }
    }
    for (j = 0; j < n; j++) {
        for (p = 0; p < k; p++) { columns[j * k + p] = host_matrix_at(b, lb, d->b, d->compute, p, j); }
    }
    for (j = 0; j < n; j++) {
        for (i = 0; i < m; i++) {
            float *to = out + i + j * ld;
            double sum = alpha * host_dot(rows.data() + i * k, columns.data() + j * k, k, n % 3 ? 8 : 4) + (beta != 0 ? beta * (double)*to : 0.0);
            *to = (float)(d->bias ? sum + (double)d->bias[i] : sum);
            if (d->aux) {
                const double x = (double)*to, wrong = 5e-4 * sin(1000.0 * x) * fmin(1.0, fabs(x));
                d->aux[i + j * (uint64_t)d->aux_ld] = *to;
                *to = (float)(0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) + wrong);
            }
        }
    }
    host_fence(0);
    host.products++;
    host.activations += d->aux != NULL;
}
static int cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const float *alpha, const void *a, cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb,
                          const float *beta, const void *c, cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *algo, void *, size_t, cudaStream_t stream) {
    HOST_ONE_CALL;
    const uint64_t m = lc->rows, n = lc->columns, k = d->a == CUBLAS_OP_N ? la->columns : la->rows;
    if ((uintptr_t)a % algo->alignment[1] || (uintptr_t)b % algo->alignment[2] || (uintptr_t)c % algo->alignment[3]) { host_fault("an operand is aligned less than the plan assumes"); }
    if (d->aux && host_alignment(d->aux) < algo->aux_alignment) { host_fault("aux is aligned less than the plan assumes"); }
    if (algo->rank < host.refuse_algorithms) { return CUBLAS_STATUS_NOT_SUPPORTED; }
    if (memcmp(&algo->a, la, sizeof *la) || memcmp(&algo->b, lb, sizeof *lb) || memcmp(&algo->c, lc, sizeof *lc)) { host_fault("a plan for another shape"); }
    if ((d->a == CUBLAS_OP_N ? la->rows : la->columns) != m || (d->b == CUBLAS_OP_N ? lb->columns : lb->rows) != n || (d->b == CUBLAS_OP_N ? lb->rows : lb->columns) != k) { return CUBLAS_STATUS_INVALID_VALUE; }
    if ((d->aux != NULL) != (d->epilogue == CUBLASLT_EPILOGUE_GELU_AUX || d->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)
        || (d->bias != NULL) != (d->epilogue == CUBLASLT_EPILOGUE_BIAS || d->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS)) { host_fault("an epilogue without its pointer"); }
    if (d->aux && (m % 8 || d->aux_ld % 8 || d->aux_ld < (int64_t)m || (uintptr_t)d->aux % 16 || d->aux == out)) { host_fault("aux of a shape that is not taken"); }
    host_check_pointer(a); host_check_pointer(b); host_check_pointer(c); host_check_pointer(d->bias); host_check_pointer(d->aux);
    const host_matmul matmul = *d;
    const host_layout of_a = *la, of_b = *lb;
    const double times = (double)*alpha, kept = (double)*beta;
    const uint64_t ld = (uint64_t)lc->ld;
    return host_do(stream, HOST_PRODUCT, [=]() { host_product(&matmul, a, &of_a, b, &of_b, (float *)out, ld, m, n, k, times, kept); }) ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}
#endif
