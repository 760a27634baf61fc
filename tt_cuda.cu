/* tt_cuda.cu - the CUDA backend of thinktuning.h: training and generation on one NVIDIA GPU, sm_80 or newer
 *
 * ---- use ----
 *     nvcc -O3 -arch=native -c tt_cuda.cu                                    (or make cuda: build/tt_cuda.o)
 *     cc app.c tt_cuda.o -L/usr/local/cuda/lib64 -lcublasLt -lcudart -lstdc++ -lm
 * and one line in the program: desc.backend = tt_cuda_backend(0) before tt_create(&desc). All else stays:
 * weights, activations, moments and KV cache live on the device; ids go up, log-probs, logits rows and
 * metrics come down.
 *
 * ---- what is inside ----
 * The table tt_backend of chapter 2, in its order. tti_cuda_NAME is an entry of the table (host code: checks,
 * scratch memory, launch), tti_gpu_NAME a kernel or what kernels call. Places to jump to:
 *     [tt:cuda.state]      the context's state           [tt:cuda.logprobs]     log-probs without the logits
 *     [tt:cuda.step]       a step of decoding as one     [tt:cuda.sample]       sampling
 *     [tt:cuda.memory]     memory and copies             [tt:cuda.rows]         rows and columns
 *     [tt:cuda.open]       opening a device              [tt:cuda.norm]         RMSNorm, LayerNorm
 *     [tt:cuda.launch]     launching, sums of a block    [tt:cuda.rope]         rotary embedding
 *     [tt:cuda.tile]       products on tensor cores      [tt:cuda.elementwise]  elementwise, AdamW
 *     [tt:cuda.gemm]       matrix product                [tt:cuda.shape]        broadcast, reduce, sums
 *     [tt:cuda.blas]       the same by cuBLASLt          [tt:cuda.cast]         casts
 *     [tt:cuda.attention]  attention                     [tt:cuda.random]       random weights
 *     [tt:cuda.decode]     attention of one query        [tt:cuda.table]        the table
 *                                                        [tt:cuda.nccl]         several GPUs
 * Products and attention exist twice: naive, one thread per result, which is the specification; and in
 * tiles on tensor cores. Which one runs is the context's choice (tt_cuda_set), or that of the environment:
 * TT_CUDA_MATH = f32, tf32, bf16 and TT_CUDA_KERNELS = fast, own, naive. Steps of decoding go to the device
 * as CUDA graphs, but with TT_CUDA_GRAPH = 0.
 *     f32    products of floats; our tiles split each factor in two TF32 halves and take three products,
 *            which keeps 21 of 24 bits (Ootomo and Yokota 2022, arXiv 2203.03341, without their scaling)
 *     tf32   factors rounded to 10 bits of mantissa      bf16   to 7 bits; sums are always float
 *     fast   products by cuBLASLt, attention by our tiles      own   all by our tiles      naive   all naive
 * TT_CUDA_NO_CUBLAS builds without cuBLASLt: fast is then own. TT_CUDA_NCCL adds the sum over several GPUs
 * (link -lnccl).
 *
 * ---- the rules of chapter 2, here ----
 * Bits    No sum uses atomics; the same call on the same GPU gives the same bits. With own and naive kernels
 *         a row does not depend on the rows beside it, decoding equals a prefill, and the log-probs of
 *         sampling are those of training. With fast kernels these three are only close: cuBLASLt chooses by
 *         shape, and decoding (one query per sequence) has a kernel of its own.
 * Rounded With bf16 and fast kernels a tensor that is a factor of products has a copy in bf16, made once for
 *         all of them, a weight's until the weight is written (tti_packed): 2 bytes more for each value.
 * Zeros   zero may wait for the kernel that comes next, see tti_cuda_fresh; for sync, say, it does not.
 * Memory  From the device's stream-ordered pool, which keeps what is freed until a context closes. Out of
 *         device memory is TT_ERR_MEM with the sizes, and the context lives on. One stream per context; only
 *         download, sync and a full ring of uploads wait.
 * Choices What ran is counted (tt_cuda_counts_get): a product that cuBLASLt does not take, or attention too
 *         large for shared memory, takes a slower way and changes no result beyond rounding. */
#include "thinktuning.h"
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* tests/test_cuda_host.cpp runs the kernels on a CPU, and stands in for all of this. */
#ifndef TTI_CUDA_HOST
#include <cuda_runtime.h>
#ifndef TT_CUDA_NO_CUBLAS
#include <cublasLt.h>
#endif
#define TTI_LAUNCH_NOW(cuda, kernel, grid, threads, shared, ...) \
    kernel<<<grid, threads, shared, (cuda)->stream>>>(__VA_ARGS__)
#define TTI_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define TTI_GPU_UNROLL _Pragma("unroll")      /* arrays in registers need it: a register has no index */
#define TTI_GPU_UNROLL_TWO _Pragma("unroll 2")
#define TTI_GPU_ROLLED _Pragma("unroll 1")
#endif

/* ---- [tt:cuda.state] the context's state ---- */
#define TTI_CUDA_DEVICES 16
#define TTI_CUDA_THREADS 256                /* in a block, of most kernels */
#define TTI_CUDA_PLANS 256
#define TTI_CUDA_PLAN_PLACES 8              /* where a plan may stand, from its hash on */
#define TTI_CUDA_ALGOS 4                    /* of cuBLASLt, tried for a product */
#define TTI_CUDA_ZEROS 4                    /* that wait at once */
#define TTI_CUDA_GRAPH_TRIES 8              /* see [tt:cuda.step] */
#define TTI_CUDA_GRID_LIMIT 65535           /* blocks along y and z of a grid, by CUDA */
#ifndef TTI_CUDA_RING                       /* the test has smaller ones */
/* Pinned bytes through which small uploads pass without a wait; behind them half as many for a held
 * step's. */
#define TTI_CUDA_RING ((size_t)1 << 22)
#define TTI_CUDA_WORKSPACE ((size_t)1 << 25)        /* bytes that cuBLASLt may use for a product */
#define TTI_CUDA_VOCAB_ROWS ((size_t)2048)          /* log-probs: rows times columns of logits at once */
#define TTI_CUDA_VOCAB_BLOCK ((size_t)16384)
#endif

/* Scratch memory by purpose; SUMS is whatever one call needs for itself. */
enum {
    TTI_SCRATCH_A,
    TTI_SCRATCH_B,
    TTI_SCRATCH_LOGITS,
    TTI_SCRATCH_STATES,
    TTI_SCRATCH_SUMS,
    TTI_N_SCRATCHES
};

#ifndef TT_CUDA_NO_CUBLAS
typedef struct tti_plan_key {
    int m, n, k, transposes, lda, ldb, ldc, kind;
    uint32_t alignments[5];
} tti_plan_key;

/* Algorithms for a key, the library's first choice first; those before `at` were refused when called. None
 * left: the product is not supported, which is remembered. */
typedef struct tti_plan {
    tti_plan_key key;
    int known, n, at;
    cublasLtMatmulAlgo_t algos[TTI_CUDA_ALGOS];
} tti_plan;
#endif

/* Memory that is to be zeroed, see tti_cuda_fresh. */
typedef struct tti_zero {
    void *at;
    size_t bytes;
} tti_zero;

typedef struct tti_cuda {
    int device, n_processors;
    tt_cuda_math math;
    tt_cuda_kernels kernels;
    size_t shared_limit;                    /* bytes of shared memory that a block can ask for */
    cudaStream_t stream;
    cudaMemPool_t pool;                     /* the device's, which all contexts share */
    tt_memory memory;
    tt_cuda_counts counts;
    void *scratch[TTI_N_SCRATCHES];
    size_t scratch_bytes[TTI_N_SCRATCHES];
    tti_zero zeros[TTI_CUDA_ZEROS];
    int n_zeros;
    char *ring;
    size_t ring_used;
    int held, lost, replays, graph_tries;   /* see [tt:cuda.step] */
    int waits;                              /* the graph may still read what the step uploads */
    size_t step_used;
    uint64_t step_hash, last_hash, graph_hash;      /* of this step, the last captured, the one to repeat */
    cudaGraphExec_t graph;
#ifndef TT_CUDA_NO_CUBLAS
    cublasLtHandle_t blas;
    void *workspace;
    tti_plan plans[TTI_CUDA_PLANS];         /* chosen algorithms, by the hash of their key */
#endif
} tti_cuda;

/* An error while launches are held costs the step, which is launched once more on its own and then reports
 * what is still wrong. */
static tt_status tti_cuda_check(tt_context *ctx, cudaError_t error, const char *what) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    if (error == cudaSuccess) { return TT_OK; }
    cudaGetLastError();                     /* clears what can be cleared */
    if (cuda && cuda->held) {
        cuda->lost = 1;
        return TT_OK;
    }
    return tt_fail(ctx, TT_ERR_DEVICE, "cuda: %s: %s", what, cudaGetErrorString(error));
}

/* A gradient is zeroed right before something adds to it. So zero only notes it (tti_cuda_zero_later); a
 * kernel that can write in the place of adding takes the note, before anything else is called, and whatever
 * is called without that zeroes first. 1: the gradient is to be written. */
static int tti_cuda_fresh(tt_context *ctx, const float *gradient, size_t n) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    int i;
    for (i = 0; i < cuda->n_zeros; i++) {
        if (cuda->zeros[i].at != gradient || cuda->zeros[i].bytes != n * sizeof *gradient) { continue; }
        cuda->zeros[i] = cuda->zeros[--cuda->n_zeros];
        cuda->counts.gradients_written++;
        return 1;
    }
    return 0;
}

/* The state, with its device made current for this thread, and all zeroed that was to be. */
static tti_cuda *tti_cuda_of(tt_context *ctx) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    cudaSetDevice(cuda->device);
    while (cuda->n_zeros > 0) {
        const tti_zero zero = cuda->zeros[--cuda->n_zeros];
        tti_cuda_check(ctx, cudaMemsetAsync(zero.at, 0, zero.bytes, cuda->stream), "zero");
    }
    return cuda;
}

static tt_status tti_cuda_launched(tt_context *ctx, const char *kernel) {
    return tti_cuda_check(ctx, cudaGetLastError(), kernel);
}

/* ---- [tt:cuda.step] a step of decoding as one ----
 * A step of decoding is some twenty kernels a layer, most of them shorter than the time between two
 * launches. So the launches between step_begin and step_end are captured and go to the device as one graph.
 * Most steps are the one before over again: the same kernels with the same arguments, since tokens,
 * positions and rows of the cache lie in device memory, and their uploads pass through the same pinned
 * bytes each time. So after two captured steps that were the same, the next is taken for a repetition:
 * nothing is launched, but all that would be is noted in a hash, and if that is the graph's, the graph is
 * launched again. If not, the step is lost, and the next one is captured: the graph is updated with it, or
 * made anew where CUDA refuses (another number of kernels, say).
 * What cannot be captured makes a step lost too: all that it launches is thrown away, and step_end asks for
 * it once more. A context begins with TTI_CUDA_GRAPH_TRIES tries. Losses, and graphs made anew, which costs
 * more than it saves, use them up; a repetition or an update gives one back; without any left, steps are
 * launched plainly. */

/* Eight bytes at a time, as FNV-1a takes one; high bits come down, which a product alone would leave
 * there. */
static void tti_cuda_note(tti_cuda *cuda, const void *bytes, size_t n) {
    const char *from = (const char *)bytes;
    uint64_t hash = cuda->step_hash, word;
    for (; n > 0; n -= n < 8 ? n : 8, from += 8) {
        word = 0;
        memcpy(&word, from, n < 8 ? n : 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    cuda->step_hash = hash;
}

/* Whether a call with these arguments is to be made now; in a step that is held it is noted, and a
 * repetition does not make it. */
static int tti_cuda_goes(const tti_cuda *cuda) { return !cuda->replays; }

template <class T, class... Rest>
static int tti_cuda_goes(tti_cuda *cuda, const T &first, const Rest &...rest) {
    if (cuda->held) { tti_cuda_note(cuda, &first, sizeof first); }
    return tti_cuda_goes(cuda, rest...);
}

#define TTI_LAUNCH(cuda, kernel, grid, threads, shared, ...)                                          \
    do {                                                                                              \
        if (tti_cuda_goes(cuda, +kernel, dim3(grid), dim3(threads), (size_t)(shared), __VA_ARGS__)) { \
            TTI_LAUNCH_NOW(cuda, kernel, grid, threads, shared, __VA_ARGS__);                         \
        }                                                                                             \
    } while (0)

static int tti_cuda_hold(tti_cuda *cuda) {
    cuda->held = cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
    if (!cuda->held) {
        cuda->graph_tries--;
        cuda->counts.graphs_lost++;
        cudaGetLastError();
    }
    return cuda->held;
}

/* Memory is made and freed at once, so the capture ends for that long. A repetition has none. */
static int tti_cuda_let_go(tti_cuda *cuda) {
    cudaGraph_t graph = NULL;
    if (!cuda->held) { return 0; }
    cuda->lost = 1;
    if (cuda->replays) { return 0; }
    cuda->held = 0;
    cudaStreamEndCapture(cuda->stream, &graph);
    if (graph) { cudaGraphDestroy(graph); }
    cudaGetLastError();
    return 1;
}

static cudaError_t tti_cuda_graph_update(cudaGraphExec_t to, cudaGraph_t from) {
#if !defined(TTI_CUDA_HOST) && CUDART_VERSION < 12000
    cudaGraphNode_t node;
    cudaGraphExecUpdateResult result;
    return cudaGraphExecUpdate(to, from, &node, &result);
#else
    cudaGraphExecUpdateResultInfo result;
    return cudaGraphExecUpdate(to, from, &result);
#endif
}

static int tti_cuda_step_begin(tt_context *ctx) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    if (cuda->graph_tries <= 0) { return 0; }
    if (cuda->waits && cudaStreamSynchronize(cuda->stream) != cudaSuccess) { return 0; }
    cuda->waits = cuda->lost = 0;
    cuda->step_used = 0;
    cuda->step_hash = 1;                    /* of no launch yet; graph_hash is 0 if there is none to repeat */
    cuda->replays = cuda->graph_hash != 0;
    if (!cuda->replays) { return tti_cuda_hold(cuda); }
    cuda->held = 1;
    return 1;
}

/* Ends the capture: the graph is what the step was. Gives 1 if it was updated, 0 if it is the first, -1 if
 * it had to be made anew or there is none. */
static int tti_cuda_step_captured(tti_cuda *cuda) {
    cudaGraph_t graph = NULL;
    int gain = 0, ok = cudaStreamEndCapture(cuda->stream, &graph) == cudaSuccess && graph && !cuda->lost;
    if (ok && cuda->graph) {
        gain = tti_cuda_graph_update(cuda->graph, graph) == cudaSuccess ? 1 : -1;
        cuda->counts.graphs_updated += gain > 0;
        if (gain < 0) {
            cudaGraphExecDestroy(cuda->graph);
            cuda->graph = NULL;
        }
    }
    if (ok && !cuda->graph) {
        ok = cudaGraphInstantiateWithFlags(&cuda->graph, graph, 0) == cudaSuccess;
        if (!ok) { cuda->graph = NULL; }
        cuda->counts.graphs_made += ok;
    }
    if (graph) { cudaGraphDestroy(graph); }
    cuda->lost |= !ok;
    return ok ? gain : -1;
}

static int tti_cuda_step_end(tt_context *ctx) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    const int repeated = cuda->replays && !cuda->lost && cuda->step_hash == cuda->graph_hash;
    const int gain = repeated ? 1 : cuda->replays ? -1 : tti_cuda_step_captured(cuda);
    int ok = repeated || (!cuda->replays && !cuda->lost);
    ok = ok && cudaGraphLaunch(cuda->graph, cuda->stream) == cudaSuccess;
    cuda->graph_hash = ok && cuda->step_hash == cuda->last_hash ? cuda->step_hash : 0;
    cuda->last_hash = ok ? cuda->step_hash : 0;
    cuda->held = cuda->replays = 0;
    cuda->waits |= ok;
    cuda->counts.graphs_repeated += ok && repeated;
    cuda->counts.graphs_launched += ok;
    cuda->counts.graphs_lost += !ok;
    cuda->graph_tries += ok ? gain : -1;
    if (cuda->graph_tries > TTI_CUDA_GRAPH_TRIES) { cuda->graph_tries = TTI_CUDA_GRAPH_TRIES; }
    cudaGetLastError();
    return ok;
}

static tt_status tti_cuda_held_fail(tt_context *ctx, const char *what) {
    return tt_fail(ctx, TT_ERR_DEVICE, "cuda: %s between step_begin and step_end", what);
}

/* ---- [tt:cuda.memory] memory and copies ---- */
static void *tti_cuda_alloc_now(tt_context *ctx, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t wanted = bytes ? bytes : 1, free_bytes = 0, all_bytes = 0;
    void *memory = NULL;
    cudaError_t error = cudaMallocFromPoolAsync(&memory, wanted, cuda->pool, cuda->stream);
    if (error == cudaErrorMemoryAllocation) {      /* what the pool keeps may lie in the wrong pieces */
        cudaGetLastError();
        cudaStreamSynchronize(cuda->stream);
        cudaMemPoolTrimTo(cuda->pool, 0);
        error = cudaMallocFromPoolAsync(&memory, wanted, cuda->pool, cuda->stream);
    }
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &all_bytes);
        tt_fail(ctx, TT_ERR_MEM,
                "out of device memory: %lu bytes wanted, %lu in use, %lu of %lu free on device %d",
                (unsigned long)bytes, (unsigned long)cuda->memory.current_bytes, (unsigned long)free_bytes,
                (unsigned long)all_bytes, cuda->device);
        return NULL;
    }
    if (tti_cuda_check(ctx, error, "allocation") != TT_OK) { return NULL; }
    cuda->memory.current_bytes += bytes;
    if (cuda->memory.current_bytes > cuda->memory.peak_bytes) {
        cuda->memory.peak_bytes = cuda->memory.current_bytes;
    }
    return memory;
}

static void *tti_cuda_alloc(tt_context *ctx, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    int held = tti_cuda_let_go(cuda);
    void *memory = tti_cuda_alloc_now(ctx, bytes);
    if (held) { tti_cuda_hold(cuda); }
    return memory;
}

static void tti_cuda_free(tt_context *ctx, void *memory, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    int held;
    if (!memory) { return; }
    held = tti_cuda_let_go(cuda);
    cuda->memory.current_bytes -= bytes;
    tti_cuda_check(ctx, cudaFreeAsync(memory, cuda->stream), "free");     /* tt_error has it */
    if (held) { tti_cuda_hold(cuda); }
}

/* Scratch memory grows to the largest size asked for and stays; its content does not survive growth. */
static void *tti_cuda_scratch(tt_context *ctx, int which, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    void *bigger;
    if (bytes <= cuda->scratch_bytes[which] && cuda->scratch[which]) { return cuda->scratch[which]; }
    bigger = tti_cuda_alloc(ctx, bytes);
    if (!bigger) { return NULL; }
    tti_cuda_free(ctx, cuda->scratch[which], cuda->scratch_bytes[which]);
    cuda->scratch[which] = bigger;
    cuda->scratch_bytes[which] = bytes;
    return bigger;
}

static tt_status tti_cuda_wait(tt_context *ctx, const char *what) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    cudaError_t error = cudaStreamSynchronize(cuda->stream);
    cuda->waits &= error != cudaSuccess;
    return tti_cuda_check(ctx, error, what);
}

/* Through the ring: the caller's bytes are copied there, and nobody waits for the device unless it is full.
 * Uploads of a held step have places of their own, the same ones in each step. */
static tt_status tti_cuda_upload_small(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t *used = cuda->held ? &cuda->step_used : &cuda->ring_used;
    cudaError_t error = cudaSuccess;
    char *place;
    if (!cuda->held && cuda->ring_used + bytes > TTI_CUDA_RING) {
        if (tti_cuda_wait(ctx, "upload") != TT_OK) { return TT_ERR_DEVICE; }
        cuda->ring_used = 0;
    }
    place = cuda->ring + (cuda->held ? TTI_CUDA_RING : 0) + *used;
    memcpy(place, from, bytes);
    *used += (bytes + 63) / 64 * 64;
    if (tti_cuda_goes(cuda, to, place, bytes)) {
        error = cudaMemcpyAsync(to, place, bytes, cudaMemcpyHostToDevice, cuda->stream);
    }
    return tti_cuda_check(ctx, error, "upload");
}

/* Small uploads are ids, offsets, a scalar. A step that is held has no other way, as it cannot wait. */
static tt_status tti_cuda_upload(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    int small = bytes <= TTI_CUDA_RING / 16;
    cudaError_t error;
    if (bytes == 0) { return TT_OK; }
    if (cuda->held && (!small || cuda->step_used + bytes > TTI_CUDA_RING / 2)) {
        cuda->lost = 1;
        return TT_OK;
    }
    if (small) { return tti_cuda_upload_small(ctx, to, from, bytes); }
    error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cuda->stream);
    if (tti_cuda_check(ctx, error, "upload") != TT_OK) { return TT_ERR_DEVICE; }
    return tti_cuda_wait(ctx, "upload");      /* from may be pinned: then the copy still reads it */
}

static tt_status tti_cuda_download(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    cudaError_t error;
    if (bytes == 0) { return TT_OK; }
    if (cuda->held) { return tti_cuda_held_fail(ctx, "download"); }
    error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cuda->stream);
    if (tti_cuda_check(ctx, error, "download") != TT_OK) { return TT_ERR_DEVICE; }
    return tti_cuda_wait(ctx, "download");
}

/* Ranges that overlap go through scratch memory: a copy on the device has no direction. */
static tt_status tti_cuda_copy(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    uintptr_t a = (uintptr_t)to, b = (uintptr_t)from;
    cudaError_t error;
    if (bytes == 0 || a == b) { return TT_OK; }
    if ((a < b ? b - a : a - b) < bytes) {
        void *between = tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, bytes);
        if (!between) { return TT_ERR_MEM; }
        if (tti_cuda_copy(ctx, between, from, bytes) != TT_OK) { return TT_ERR_DEVICE; }
        from = between;
    }
    if (!tti_cuda_goes(cuda, to, from, bytes)) { return TT_OK; }
    error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda->stream);
    return tti_cuda_check(ctx, error, "copy");
}

static tt_status tti_cuda_zero(tt_context *ctx, void *to, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    if (bytes == 0 || !tti_cuda_goes(cuda, to, bytes)) { return TT_OK; }
    return tti_cuda_check(ctx, cudaMemsetAsync(to, 0, bytes, cuda->stream), "zero");
}

/* The same, noted for tti_cuda_fresh; a step that is held has no gradients. */
static tt_status tti_cuda_zero_later(tt_context *ctx, void *to, size_t bytes) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    const tti_zero zero = {to, bytes};
    if (bytes == 0 || cuda->held || cuda->n_zeros == TTI_CUDA_ZEROS) { return tti_cuda_zero(ctx, to, bytes); }
    cuda->zeros[cuda->n_zeros++] = zero;
    return TT_OK;
}

static tt_status tti_cuda_sync(tt_context *ctx) {
    if (tti_cuda_of(ctx)->held) { return tti_cuda_held_fail(ctx, "sync"); }
    return tti_cuda_wait(ctx, "sync");
}

/* ---- [tt:cuda.open] opening a device ---- */
/* Also of a context that did not open; no error of it is left to the next one. What the pool keeps goes
 * back to the device. */
static void tti_cuda_close(tt_context *ctx, void *state) {
    tti_cuda *cuda = (tti_cuda *)state;
    cudaError_t error = cudaSetDevice(cuda->device);
    int i;
    if (cuda->stream) { error = cudaStreamSynchronize(cuda->stream); }
    if (cuda->graph) { cudaGraphExecDestroy(cuda->graph); }
    for (i = 0; i < TTI_N_SCRATCHES && error == cudaSuccess; i++) {
        if (cuda->scratch[i]) { error = cudaFreeAsync(cuda->scratch[i], cuda->stream); }
    }
#ifndef TT_CUDA_NO_CUBLAS
    if (cuda->workspace && error == cudaSuccess) { error = cudaFreeAsync(cuda->workspace, cuda->stream); }
    if (cuda->blas) { cublasLtDestroy(cuda->blas); }
#endif
    if (cuda->stream && error == cudaSuccess) { error = cudaStreamSynchronize(cuda->stream); }
    if (cuda->pool && error == cudaSuccess) { cudaMemPoolTrimTo(cuda->pool, 0); }
    if (cuda->ring) { cudaFreeHost(cuda->ring); }
    if (cuda->stream) { cudaStreamDestroy(cuda->stream); }
    cudaGetLastError();
    tt_free(ctx, cuda, 1, sizeof *cuda);
}

/* The device's own pool, so that memory which one context has freed serves the others too. It gives nothing
 * back to the device before a context closes or memory runs out. */
static tt_status tti_cuda_open_pool(tt_context *ctx, tti_cuda *cuda) {
    uint64_t keep = UINT64_MAX;
    cudaError_t error = cudaDeviceGetDefaultMemPool(&cuda->pool, cuda->device);
    if (tti_cuda_check(ctx, error, "memory pool") != TT_OK) { return TT_ERR_DEVICE; }
    error = cudaMemPoolSetAttribute(cuda->pool, cudaMemPoolAttrReleaseThreshold, &keep);
    return tti_cuda_check(ctx, error, "memory pool");
}

/* Index of the environment's value in a list of names; 0 if it is not set, -1 with the error set if
 * unknown. */
static int tti_cuda_choice(tt_context *ctx, const char *variable, const char *const names[3]) {
    const char *value = getenv(variable);
    int i;
    if (!value || !value[0]) { return 0; }
    for (i = 0; i < 3; i++) {
        if (strcmp(value, names[i]) == 0) { return i; }
    }
    tt_fail(ctx, TT_ERR_ARG, "cuda: %s is \"%s\", expected %s, %s or %s", variable, value, names[0], names[1],
            names[2]);
    return -1;
}

/* What the environment says: math, kernels, graphs or none. */
static tt_status tti_cuda_open_settings(tt_context *ctx, tti_cuda *cuda) {
    static const char *const maths[3] = {"f32", "tf32", "bf16"};
    static const char *const kernels[3] = {"fast", "own", "naive"};
    const char *graph = getenv("TT_CUDA_GRAPH");
    int math = tti_cuda_choice(ctx, "TT_CUDA_MATH", maths);
    int set = tti_cuda_choice(ctx, "TT_CUDA_KERNELS", kernels);
    if (math < 0 || set < 0) { return TT_ERR_ARG; }
    if (graph && graph[0] && strcmp(graph, "0") != 0 && strcmp(graph, "1") != 0) {
        return tt_fail(ctx, TT_ERR_ARG, "cuda: TT_CUDA_GRAPH is \"%s\", expected 0 or 1", graph);
    }
    cuda->graph_tries = graph && graph[0] == '0' ? 0 : TTI_CUDA_GRAPH_TRIES;
    cuda->math = (tt_cuda_math)math;
    cuda->kernels = (tt_cuda_kernels)set;
    return TT_OK;
}

/* The device exists and is new enough; it is current afterwards. */
static tt_status tti_cuda_open_device(tt_context *ctx, tti_cuda *cuda) {
    int count = 0, major = 0, shared = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        return tt_fail(ctx, TT_ERR_DEVICE, "cuda: no device: %s", cudaGetErrorString(error));
    }
    if (cuda->device < 0 || cuda->device >= count) {
        return tt_fail(ctx, TT_ERR_DEVICE, "cuda: device is %d, expected 0..%d", cuda->device, count - 1);
    }
    if (tti_cuda_check(ctx, cudaSetDevice(cuda->device), "device") != TT_OK) { return TT_ERR_DEVICE; }
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->device);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda->device);
    cudaDeviceGetAttribute(&cuda->n_processors, cudaDevAttrMultiProcessorCount, cuda->device);
    if (major < 8) {
        return tt_fail(ctx, TT_ERR_DEVICE,
                       "cuda: device %d has compute capability %d.x, expected 8.0 or newer", cuda->device,
                       major);
    }
    cuda->shared_limit = (size_t)shared;
    return TT_OK;
}

/* Stream, ring, pool, and cuBLASLt with its workspace. */
static tt_status tti_cuda_open_resources(tt_context *ctx, tti_cuda *cuda) {
    cudaError_t error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    if (tti_cuda_check(ctx, error, "stream") != TT_OK) { return TT_ERR_DEVICE; }
    error = cudaMallocHost((void **)&cuda->ring, TTI_CUDA_RING + TTI_CUDA_RING / 2);
    if (tti_cuda_check(ctx, error, "pinned memory") != TT_OK) { return TT_ERR_DEVICE; }
    if (tti_cuda_open_pool(ctx, cuda) != TT_OK) { return TT_ERR_DEVICE; }
#ifndef TT_CUDA_NO_CUBLAS
    if (cublasLtCreate(&cuda->blas) != CUBLAS_STATUS_SUCCESS) {
        return tt_fail(ctx, TT_ERR_DEVICE, "cuda: cuBLASLt does not open");
    }
    error = cudaMallocFromPoolAsync(&cuda->workspace, TTI_CUDA_WORKSPACE, cuda->pool, cuda->stream);
    if (tti_cuda_check(ctx, error, "workspace of cuBLASLt") != TT_OK) { return TT_ERR_DEVICE; }
#endif
    return TT_OK;
}

/* See [tt:cuda.attention]. */
static tt_status tti_cuda_open_kernels(tt_context *ctx, const tti_cuda *cuda);

static tt_status tti_cuda_open(tt_context *ctx, const tt_backend *self, void **state) {
    tti_cuda *cuda = (tti_cuda *)tt_alloc(ctx, 1, sizeof *cuda);
    tt_status status;
    if (!cuda) { return TT_ERR_MEM; }
    cuda->device = *(const int *)self->config;
    status = tti_cuda_open_settings(ctx, cuda);
    if (status == TT_OK) { status = tti_cuda_open_device(ctx, cuda); }
    if (status == TT_OK) { status = tti_cuda_open_resources(ctx, cuda); }
    if (status == TT_OK) { status = tti_cuda_open_kernels(ctx, cuda); }
    if (status != TT_OK) {
        tti_cuda_close(ctx, cuda);
        return status;
    }
    *state = cuda;
    return TT_OK;
}

/* ---- [tt:cuda.launch] launching, and sums of a block ----
 * Elementwise kernels walk over n values in strides of the whole grid. */
#define TTI_EACH_VALUE(i, n)                                               \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
         i += (size_t)gridDim.x * blockDim.x)

/* 16 blocks a processor are enough to fill it. */
static unsigned tti_cuda_grid(const tti_cuda *cuda, size_t n) {
    size_t blocks = (n + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS, most = (size_t)cuda->n_processors * 16;
    return (unsigned)(blocks < most ? blocks : most);
}

/* Launches an elementwise kernel and returns from the function that says so. */
#define TTI_LAUNCH_VALUES(ctx, kernel, n, ...)                                                 \
    do {                                                                                       \
        tti_cuda *cuda_ = tti_cuda_of(ctx);                                                    \
        size_t n_ = (n);                                                                       \
        if (n_ == 0) { return TT_OK; }                                                         \
        TTI_LAUNCH(cuda_, kernel, tti_cuda_grid(cuda_, n_), TTI_CUDA_THREADS, 0, __VA_ARGS__); \
        return tti_cuda_launched(ctx, #kernel);                                                \
    } while (0)

/* What a gradient is before something is added to it; fresh: not zeroed, see tti_cuda_fresh. */
static __device__ float tti_gpu_before(const float *gradient, int fresh) { return fresh ? 0.0f : *gradient; }

/* Sum over the threads of a block, the same value and the same order for all: a tree within each warp, then
 * the warps one after the other. Threads are whole warps. */
template <class T>
static __device__ T tti_gpu_sum(T value) {
    __shared__ T parts[32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    for (int step = 16; step > 0; step /= 2) { value += __shfl_xor_sync(0xFFFFFFFFu, value, step); }
    if (n_warps == 1) { return value; }
    if (lane == 0) { parts[warp] = value; }
    __syncthreads();
    value = parts[0];
    for (unsigned i = 1; i < n_warps; i++) { value += parts[i]; }
    __syncthreads();
    return value;
}

static __device__ float tti_gpu_max(float value) {
    __shared__ float parts[32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    for (int step = 16; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
    }
    if (n_warps == 1) { return value; }
    if (lane == 0) { parts[warp] = value; }
    __syncthreads();
    value = parts[0];
    for (unsigned i = 1; i < n_warps; i++) { value = fmaxf(value, parts[i]); }
    __syncthreads();
    return value;
}

/* ---- [tt:cuda.tile] products on tensor cores ----
 * One product of tiles serves gemm and attention: C[i][j] += sum over k of A[i][k] B[j][k], A and B in
 * shared memory with k side by side, C in registers, spread over the warp as mma.m16n8 lays it out: of tile
 * (i, j) lane 4g + t holds rows 16i + g and 16i + g + 8, columns 8j + 2t and 8j + 2t + 1.
 *     c[i][j][r]      row 16i + g + 8 (r / 2), column 8j + 2t + r % 2
 * Rows of shared tiles are TTI_PAD apart from a multiple of 32, so that the 8 rows that a fragment reads
 * lie in different banks. Source: PTX ISA, "Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16". */
#define TTI_PAD 8

/* What a tile holds of a float, and how many values of k one mma takes. */
template <int MATH>
struct tti_mode {
    typedef float element;
    enum { step = 8 };
};

template <>
struct tti_mode<TT_CUDA_BF16> {
    typedef uint16_t element;
    enum { step = 16 };
};

#ifndef TTI_CUDA_HOST
/* To the nearest of the floats with 10 bits of mantissa. */
static __device__ __forceinline__ uint32_t tti_gpu_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

static __device__ __forceinline__ uint16_t tti_gpu_bf16(float x) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

static __device__ __forceinline__ void tti_gpu_mma_tf32(float c[4], const uint32_t a[4],
                                                        const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void tti_gpu_mma_bf16(float c[4], const uint32_t a[4],
                                                        const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Two floats to a pair of bf16, the first in the low half. */
static __device__ __forceinline__ uint32_t tti_gpu_bf16_pair(float first, float second) {
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}

/* 2 to the x, to 2^-22. */
static __device__ __forceinline__ float tti_gpu_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Four matrices of 8 lines of 16 bytes: lane l gives the address of line l % 8 of matrix l / 8, and gets of
 * matrix i word l % 4 of line l / 4 in r[i]. TURNED: of its 16-bit values those of column l / 4 in lines
 * 2 (l % 4) and the next. */
template <int TURNED>
static __device__ __forceinline__ void tti_gpu_ldmatrix(uint32_t *r, const uint32_t *line) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(line);
    if (TURNED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at));
    }
}

/* BYTES (4 or 16) into shared memory while the thread goes on: the first n of them from `from`, the rest 0.
 * They stand there, for this thread, after tti_gpu_copied. */
template <int BYTES>
static __device__ __forceinline__ void tti_gpu_copy(float *to, const float *from, int n) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
    }
}

static __device__ __forceinline__ void tti_gpu_copied(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* The thread's number as if it could change: else the compiler takes every address of a tile out of the loop
 * over tiles, and has no registers for them. */
static __device__ __forceinline__ int tti_gpu_thread(void) {
    int id = (int)threadIdx.x;
    asm volatile("" : "+r"(id));
    return id;
}

/* All tiles of a warp, one step of k. */
template <int MATH, int MI, int NI>
static __device__ __forceinline__ void tti_gpu_mma(float c[MI][NI][4], const uint32_t a[MI][4],
                                                   const uint32_t b[NI][2]) {
    TTI_GPU_UNROLL
    for (int i = 0; i < MI; i++) {
        TTI_GPU_UNROLL
        for (int j = 0; j < NI; j++) {
            if (MATH == TT_CUDA_BF16) {
                tti_gpu_mma_bf16(c[i][j], a[i], b[j]);
            } else {
                tti_gpu_mma_tf32(c[i][j], a[i], b[j]);
            }
        }
    }
}
#endif

/* Puts a float into a tile. */
static __device__ __forceinline__ void tti_gpu_put(float *to, float x, int math) {
    *to = math == TT_CUDA_TF32 ? __uint_as_float(tti_gpu_tf32(x)) : x;
}

static __device__ __forceinline__ void tti_gpu_put(uint16_t *to, float x, int) { *to = tti_gpu_bf16(x); }

/* A lane's share of a step of k. TF32: columns t and t + 4 of the fragment take elements 2t and 2t + 1, for
 * A and B alike: the sum over k is the same, and the two stand side by side. BF16: pairs 2t and 2t + 8, as
 * the layout says. */
static __device__ __forceinline__ void tti_gpu_pair(const float *row, unsigned t, uint32_t &first,
                                                    uint32_t &second) {
    float2 pair = *(const float2 *)(row + 2 * t);
    first = __float_as_uint(pair.x);
    second = __float_as_uint(pair.y);
}

static __device__ __forceinline__ void tti_gpu_pair(const uint16_t *row, unsigned t, uint32_t &first,
                                                    uint32_t &second) {
    first = *(const uint32_t *)(row + 2 * t);
    second = *(const uint32_t *)(row + 2 * t + 8);
}

/* x = high + low, both TF32, to 21 bits. high comes as x. */
static __device__ __forceinline__ void tti_gpu_split(uint32_t &high, uint32_t &low) {
    float x = __uint_as_float(high);
    high = tti_gpu_tf32(x);
    low = tti_gpu_tf32(x - __uint_as_float(high));
}

/* c[MI][NI] tiles of a warp += a b' over one step of k, from their fragments.
 * F32: a b = a_high b_high + a_low b_high + a_high b_low; the product of the low halves is below the rest.
 * Tensor cores cut what they add to off towards zero, which over a long sum is a bias; so each step is
 * summed by itself and added to c by an addition that rounds to the nearest, as the paper above does. */
template <int MATH, int MI, int NI>
static __device__ __forceinline__ void tti_gpu_step(float c[MI][NI][4], uint32_t a[MI][4],
                                                    uint32_t b[NI][2]) {
    uint32_t a_low[MI][4], b_low[NI][2];
    if (MATH == TT_CUDA_F32) {
        TTI_GPU_UNROLL
        for (int i = 0; i < MI; i++) {
            TTI_GPU_UNROLL
            for (int r = 0; r < 4; r++) { tti_gpu_split(a[i][r], a_low[i][r]); }
        }
        TTI_GPU_UNROLL
        for (int j = 0; j < NI; j++) {
            tti_gpu_split(b[j][0], b_low[j][0]);
            tti_gpu_split(b[j][1], b_low[j][1]);
        }
        TTI_GPU_UNROLL
        for (int i = 0; i < MI; i++) {
            float d[1][NI][4] = {{{0.0f}}};
            tti_gpu_mma<MATH, 1, NI>(d, a_low + i, b);
            tti_gpu_mma<MATH, 1, NI>(d, a + i, b_low);
            tti_gpu_mma<MATH, 1, NI>(d, a + i, b);
            TTI_GPU_UNROLL
            for (int j = 0; j < NI; j++) {
                TTI_GPU_UNROLL
                for (int r = 0; r < 4; r++) { c[i][j][r] += d[0][j][r]; }
            }
        }
    } else {
        tti_gpu_mma<MATH, MI, NI>(c, a, b);
    }
}

/* The same over k values. a: 16 MI rows, lda apart; b: 8 NI rows, ldb apart. */
template <int MATH, int MI, int NI, class E>
static __device__ __forceinline__ void tti_gpu_product(float c[MI][NI][4], const E *a, int lda, const E *b,
                                                       int ldb, int k) {
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t a_step[MI][4], b_step[NI][2];
    for (int p = 0; p < k; p += tti_mode<MATH>::step) {
        TTI_GPU_UNROLL
        for (int i = 0; i < MI; i++) {
            tti_gpu_pair(a + (i * 16 + g) * lda + p, t, a_step[i][0], a_step[i][2]);
            tti_gpu_pair(a + (i * 16 + g + 8) * lda + p, t, a_step[i][1], a_step[i][3]);
        }
        TTI_GPU_UNROLL
        for (int j = 0; j < NI; j++) {
            tti_gpu_pair(b + (j * 8 + g) * ldb + p, t, b_step[j][0], b_step[j][1]);
        }
        tti_gpu_step<MATH, MI, NI>(c, a_step, b_step);
    }
}

/* Rows in global memory: line r begins at p + (r / group) * step + (r % group) * part. Heads of a group
 * make the rows of a token's queries; for all else group is 1. */
typedef struct tti_lines {
    const float *p;
    size_t step, part;
    int group;
} tti_lines;

static __device__ __forceinline__ const float *tti_gpu_line(const tti_lines &lines, int r) {
    return lines.group == 1
             ? lines.p + (size_t)r * lines.step
             : lines.p + (size_t)(r / lines.group) * lines.step + (size_t)(r % lines.group) * lines.part;
}

/* A tile of LINES x WIDTH from line first on, column x0 on, into shared memory; what lies beyond `lines` and
 * `width` is 0. TURNED: element (line, x) goes to to[x * ld + line], else to[line * ld + x]. */
template <int MATH, int LINES, int WIDTH, int TURNED, class E>
static __device__ __forceinline__ void tti_gpu_fill(E *to, int ld, const tti_lines &from, int first,
                                                    int lines, int x0, int width) {
    for (int i = (int)threadIdx.x; i < LINES * WIDTH; i += (int)blockDim.x) {
        int line = i / WIDTH, x = i % WIDTH;
        float value = line < lines && x < width ? tti_gpu_line(from, first + line)[x0 + x] : 0.0f;
        tti_gpu_put(to + (TURNED ? x * ld + line : line * ld + x), value, MATH);
    }
}

/* ---- [tt:cuda.gemm] matrix product ----
 * C [m, n] (+)= op(A) op(B) (+ bias), and y = activation(C) in the same pass; as tt_gemm_args says. */
static __device__ float tti_gpu_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static __device__ float tti_gpu_normal_cdf(float x) { return 0.5f * erfcf(-0.707106781f * x); }

/* gelu(x) = x (1 + tanh u) / 2 = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3).
 * Source: Hendrycks and Gimpel 2016, arXiv 1606.08415. */
static __device__ float tti_gpu_gelu_sigmoid(float x) {
    return tti_gpu_sigmoid(1.59576912f * x * fmaf(0.044715f * x, x, 1.0f));
}

/* op(x) of tt_unary. */
static __device__ float tti_gpu_value(int op, float x, float p0, float p1) {
    switch (op) {
    case TT_NEG: return -x;
    case TT_EXP: return expf(x);
    case TT_LOG: return logf(x);
    case TT_TANH: return tanhf(x);
    case TT_CLAMP:
        x = p0 > x ? p0 : x;
        return p1 < x ? p1 : x;
    case TT_SCALE: return x * p0;
    case TT_GELU_TANH: return x * tti_gpu_gelu_sigmoid(x);
    default: return x * tti_gpu_normal_cdf(x);      /* TT_GELU_ERF */
    }
}

/* Naive, one thread per result: the chain of the CPU's kernels, bit for bit. */
static __global__ void tti_gpu_gemm(tt_gemm_args g) {
    size_t i = (size_t)blockIdx.y * blockDim.y + threadIdx.y;
    size_t j = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t a_row = g.transpose_a ? 1 : (size_t)g.lda, a_k = g.transpose_a ? (size_t)g.lda : 1;
    size_t b_column = g.transpose_b ? (size_t)g.ldb : 1, b_k = g.transpose_b ? 1 : (size_t)g.ldb;
    for (; j < (size_t)g.n && i < (size_t)g.m; i += (size_t)gridDim.y * blockDim.y) {
        float *c = g.c + i * (size_t)g.ldc + j, sum = g.accumulate ? *c : g.bias ? g.bias[j] : 0.0f;
        for (size_t k = 0; k < (size_t)g.k; k++) {
            sum = fmaf(g.a[i * a_row + k * a_k], g.b[j * b_column + k * b_k], sum);
        }
        *c = sum;
        if (g.activation) { g.y[i * (size_t)g.ldc + j] = tti_gpu_value(g.activation, sum, 0.0f, 0.0f); }
    }
}

/* In tiles: a block makes TTI_TILE x TTI_TILE of C in steps of TTI_TILE_K; its 8 warps make 64 x 32 each. C
 * is taken up where it stands (or from the bias), so a product that is split along k at a multiple of 16
 * keeps its bits. */
#define TTI_TILE 128
#define TTI_TILE_K 32

template <int MATH>
static __global__ void __launch_bounds__(256) tti_gpu_gemm_tiles(tt_gemm_args g) {
    typedef typename tti_mode<MATH>::element E;
    enum { LD = TTI_TILE_K + TTI_PAD };
    __shared__ __align__(16) E a_tile[TTI_TILE * LD];
    __shared__ __align__(16) E b_tile[TTI_TILE * LD];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = (int)blockIdx.x * TTI_TILE, n0 = (int)blockIdx.y * TTI_TILE;
    const int rows = min(TTI_TILE, g.m - m0), columns = min(TTI_TILE, g.n - n0);
    const int row = (int)(warp / 4 * 64 + lane / 4), column = (int)(warp % 4 * 32 + lane % 4 * 2);
    const tti_lines a = {g.a, (size_t)g.lda, 0, 1}, b = {g.b, (size_t)g.ldb, 0, 1};
    float c[4][4][4];
/* Row and column, in the block's part of C, of the thread's result c[i][j][r]; and a walk over its results.
 * */
#define TTI_C_ROW(i, r) (row + (i) * 16 + (r) / 2 * 8)
#define TTI_C_COLUMN(j, r) (column + (j) * 8 + (r) % 2)
#define TTI_EACH_C(i, j, r)                        \
    TTI_GPU_UNROLL for (int i = 0; i < 4; i++)     \
        TTI_GPU_UNROLL for (int j = 0; j < 4; j++) \
            TTI_GPU_UNROLL for (int r = 0; r < 4; r++)
    TTI_EACH_C(i, j, r) {
        int y = TTI_C_ROW(i, r), x = TTI_C_COLUMN(j, r);
        c[i][j][r] = 0.0f;
        if (y >= rows || x >= columns) { continue; }
        if (g.accumulate) {
            c[i][j][r] = g.c[(size_t)(m0 + y) * (size_t)g.ldc + (size_t)(n0 + x)];
        } else if (g.bias) {
            c[i][j][r] = g.bias[n0 + x];
        }
    }
    for (int k0 = 0; k0 < g.k; k0 += TTI_TILE_K) {
        const int ks = min(TTI_TILE_K, g.k - k0);
        if (g.transpose_a) {
            tti_gpu_fill<MATH, TTI_TILE_K, TTI_TILE, 1>(a_tile, LD, a, k0, ks, m0, rows);
        } else {
            tti_gpu_fill<MATH, TTI_TILE, TTI_TILE_K, 0>(a_tile, LD, a, m0, rows, k0, ks);
        }
        if (g.transpose_b) {
            tti_gpu_fill<MATH, TTI_TILE, TTI_TILE_K, 0>(b_tile, LD, b, n0, columns, k0, ks);
        } else {
            tti_gpu_fill<MATH, TTI_TILE_K, TTI_TILE, 1>(b_tile, LD, b, k0, ks, n0, columns);
        }
        __syncthreads();
        tti_gpu_product<MATH, 4, 4>(c, a_tile + warp / 4 * 64 * LD, LD, b_tile + warp % 4 * 32 * LD, LD,
                                    TTI_TILE_K);
        __syncthreads();
    }
    TTI_EACH_C(i, j, r) {
        int y = TTI_C_ROW(i, r), x = TTI_C_COLUMN(j, r);
        size_t at = (size_t)(m0 + y) * (size_t)g.ldc + (size_t)(n0 + x);
        if (y >= rows || x >= columns) { continue; }
        g.c[at] = c[i][j][r];
        if (g.activation) { g.y[at] = tti_gpu_value(g.activation, c[i][j][r], 0.0f, 0.0f); }
    }
#undef TTI_C_ROW
#undef TTI_C_COLUMN
#undef TTI_EACH_C
}

static tt_status tti_cuda_gemm_naive(tt_context *ctx, const tt_gemm_args *g) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    unsigned across = ((unsigned)g->n + 31) / 32, down = ((unsigned)g->m + 7) / 8;
    dim3 threads(32, 8), grid(across, min(down, (unsigned)TTI_CUDA_GRID_LIMIT));
    cuda->counts.gemm_naive++;
    TTI_LAUNCH(cuda, tti_gpu_gemm, grid, threads, 0, *g);
    return tti_cuda_launched(ctx, "gemm");
}

static tt_status tti_cuda_gemm_tiles(tt_context *ctx, const tt_gemm_args *g) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    dim3 grid(((unsigned)g->m + TTI_TILE - 1) / TTI_TILE, ((unsigned)g->n + TTI_TILE - 1) / TTI_TILE);
    void (*kernel)(tt_gemm_args) = tti_gpu_gemm_tiles<TT_CUDA_F32>;
    if (cuda->math == TT_CUDA_TF32) { kernel = tti_gpu_gemm_tiles<TT_CUDA_TF32>; }
    if (cuda->math == TT_CUDA_BF16) { kernel = tti_gpu_gemm_tiles<TT_CUDA_BF16>; }
    if (grid.y > TTI_CUDA_GRID_LIMIT) {
        return tt_fail(ctx, TT_ERR_ARG, "gemm: n is %d, expected at most %d", g->n,
                       TTI_CUDA_GRID_LIMIT * TTI_TILE);
    }
    cuda->counts.gemm_tiles++;
    TTI_LAUNCH(cuda, kernel, grid, TTI_CUDA_THREADS, 0, *g);
    return tti_cuda_launched(ctx, "gemm_tiles");
}

/* ---- [tt:cuda.blas] the same by cuBLASLt ----
 * It counts columns first. A row-major matrix read that way is its transpose, so it is asked for C' = B'
 * A': its first factor is our B, its rows are our n. */
/* Values from a row of a matrix in bf16 to the next: its length rounded up to a multiple of 8. */
static size_t tti_cuda_packed_step(int columns) { return ((size_t)columns + 7) / 8 * 8; }

#ifndef TT_CUDA_NO_CUBLAS
static __global__ void tti_gpu_activate(tt_gemm_args g) {
    TTI_EACH_VALUE(i, (size_t)g.m * (size_t)g.n) {
        size_t at = i / (size_t)g.n * (size_t)g.ldc + i % (size_t)g.n;
        g.y[at] = tti_gpu_value(g.activation, g.c[at], 0.0f, 0.0f);
    }
}

/* Rows of floats to rows of bf16, to_step apart. A thread takes 4 values; `whole` rows of from are aligned to
 * as many. */
static __global__ void tti_gpu_pack_bf16(uint2 *to, const float *from, size_t rows, size_t columns,
                                         size_t to_step, size_t from_step, int whole) {
    const size_t width = to_step / 4;
    TTI_EACH_VALUE(i, rows * width) {
        const size_t column = i % width * 4;
        const float *x = from + i / width * from_step + column;
        float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
        if (whole && column + 4 <= columns) {
            four = *(const float4 *)x;
        } else {
            if (column < columns) { four.x = x[0]; }
            if (column + 1 < columns) { four.y = x[1]; }
            if (column + 2 < columns) { four.z = x[2]; }
            if (column + 3 < columns) { four.w = x[3]; }
        }
        uint2 pairs = {tti_gpu_bf16_pair(four.x, four.y), tti_gpu_bf16_pair(four.z, four.w)};
        to[i] = pairs;
    }
}

static void tti_cuda_pack_rows(tt_context *ctx, void *to, const float *from, int rows, int columns, int ld) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    const size_t step = tti_cuda_packed_step(columns), n = (size_t)rows * step;
    const int whole = ld % 4 == 0 && (uintptr_t)from % 16 == 0;
    TTI_LAUNCH(cuda, tti_gpu_pack_bf16, tti_cuda_grid(cuda, n / 4), TTI_CUDA_THREADS, 0, (uint2 *)to, from,
               (size_t)rows, (size_t)columns, step, (size_t)ld, whole);
    cuda->counts.factors_rounded++;
    cuda->counts.bytes_rounded += (size_t)rows * (size_t)columns * sizeof(float) + n * sizeof(uint16_t);
}

/* A matrix rounded to bf16 for all its products. */
static size_t tti_cuda_pack(tt_context *ctx, int rows, int cols, const float *from, void *to) {
    const tti_cuda *cuda = tti_cuda_of(ctx);
    if (cuda->math != TT_CUDA_BF16 || cuda->kernels != TT_CUDA_FAST || rows == 0) { return 0; }
    if (to) {
        tti_cuda_pack_rows(ctx, to, from, rows, cols, cols);
        tti_cuda_launched(ctx, "pack_bf16");
    }
    return (size_t)rows * tti_cuda_packed_step(cols) * sizeof(uint16_t);
}

/* Puts a matrix as bf16, in scratch memory if it was not packed before, and its new leading dimension in the
 * place of the old ones. */
static tt_status tti_cuda_take_packed(tt_context *ctx, int which, const void *packed, const float **matrix,
                                      int rows, int columns, int *ld) {
    const size_t step = tti_cuda_packed_step(columns);
    if (!packed) {
        void *to = tti_cuda_scratch(ctx, which, (size_t)rows * step * sizeof(uint16_t));
        if (!to) { return TT_ERR_MEM; }
        tti_cuda_pack_rows(ctx, to, *matrix, rows, columns, *ld);
        packed = to;
    }
    *matrix = (const float *)packed;
    *ld = (int)step;
    return tti_cuda_launched(ctx, "pack_bf16");
}

/* The largest power of two that divides the address, at most `alignment`. */
static uint32_t tti_cuda_alignment(const void *p, uint32_t alignment) {
    while ((uintptr_t)p % alignment) { alignment /= 2; }
    return alignment;
}

/* The description of one product. The first call that fails is kept, and nothing is called after it. */
typedef struct tti_blas {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulPreference_t preference;
    cublasStatus_t status;
    const char *call;                       /* that gave the status */
} tti_blas;

static int tti_blas_ok(const tti_blas *blas) { return blas->status == CUBLAS_STATUS_SUCCESS; }

static int tti_blas_note(tti_blas *blas, cublasStatus_t status, const char *call) {
    blas->status = status;
    blas->call = call;
    return tti_blas_ok(blas);
}

static void tti_blas_layout(tti_blas *blas, cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                            uint64_t rows, uint64_t columns, int ld) {
    if (!tti_blas_ok(blas)) { return; }
    tti_blas_note(blas, cublasLtMatrixLayoutCreate(layout, type, rows, columns, ld), "MatrixLayoutCreate");
}

static void tti_blas_set(tti_blas *blas, cublasLtMatmulDescAttributes_t what, const void *value,
                         size_t bytes) {
    if (!tti_blas_ok(blas)) { return; }
    tti_blas_note(blas, cublasLtMatmulDescSetAttribute(blas->product, what, value, bytes),
                  "MatmulDescSetAttribute");
}

static void tti_blas_prefer(tti_blas *blas, cublasLtMatmulPreferenceAttributes_t what, const void *value,
                            size_t bytes) {
    if (!tti_blas_ok(blas)) { return; }
    tti_blas_note(blas, cublasLtMatmulPreferenceSetAttribute(blas->preference, what, value, bytes),
                  "MatmulPreferenceSetAttribute");
}

/* Bias and GELU are what cuBLASLt calls an epilogue; C before the activation is its "aux". */
static void tti_blas_epilogue(tti_blas *blas, const tt_gemm_args *g) {
    const int biased = g->bias && !g->accumulate;
    const int64_t ldc = g->ldc;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    if (!biased && !g->activation) { return; }
    if (g->activation) { epilogue = biased ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX; }
    tti_blas_set(blas, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (biased) { tti_blas_set(blas, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias); }
    if (!g->activation) { return; }
    tti_blas_set(blas, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &g->c, sizeof g->c);
    tti_blas_set(blas, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ldc, sizeof ldc);
}

static void tti_blas_begin(tti_blas *blas, const tt_gemm_args *g, int math) {
    const cublasComputeType_t sums = math == TT_CUDA_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const cudaDataType_t factors = math == TT_CUDA_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t turn_a = g->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t turn_b = g->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t m = (uint64_t)g->m, n = (uint64_t)g->n, k = (uint64_t)g->k;
    memset(blas, 0, sizeof *blas);
    tti_blas_note(blas, cublasLtMatmulDescCreate(&blas->product, sums, CUDA_R_32F), "MatmulDescCreate");
    tti_blas_set(blas, CUBLASLT_MATMUL_DESC_TRANSA, &turn_b, sizeof turn_b);
    tti_blas_set(blas, CUBLASLT_MATMUL_DESC_TRANSB, &turn_a, sizeof turn_a);
    tti_blas_layout(blas, &blas->b, factors, g->transpose_b ? k : n, g->transpose_b ? n : k, g->ldb);
    tti_blas_layout(blas, &blas->a, factors, g->transpose_a ? m : k, g->transpose_a ? k : m, g->lda);
    tti_blas_layout(blas, &blas->c, CUDA_R_32F, n, m, g->ldc);
    tti_blas_epilogue(blas, g);
}

static void tti_blas_end(tti_blas *blas) {
    if (blas->preference) { cublasLtMatmulPreferenceDestroy(blas->preference); }
    if (blas->a) { cublasLtMatrixLayoutDestroy(blas->a); }
    if (blas->b) { cublasLtMatrixLayoutDestroy(blas->b); }
    if (blas->c) { cublasLtMatrixLayoutDestroy(blas->c); }
    if (blas->product) { cublasLtMatmulDescDestroy(blas->product); }
}

/* All that an algorithm is chosen by. Alignments: of A, B, the result, the bias and C before the activation;
 * up to the 64 of every tensor, so that the same product in another place has the same plan. Of the last one
 * no limit can be given to the library, which sees its address. */
static tti_plan_key tti_cuda_plan_key(const tt_gemm_args *g, int math) {
    tti_plan_key key;
    memset(&key, 0, sizeof key);            /* keys are hashed and compared as bytes */
    key.m = g->m;
    key.n = g->n;
    key.k = g->k;
    key.lda = g->lda;
    key.ldb = g->ldb;
    key.ldc = g->ldc;
    key.transposes = g->transpose_a | g->transpose_b << 1;
    key.kind = math * 8 + (g->activation ? 4 : 0) + (g->accumulate ? 2 : g->bias ? 1 : 0);
    key.alignments[0] = tti_cuda_alignment(g->a, 64);
    key.alignments[1] = tti_cuda_alignment(g->b, 64);
    key.alignments[2] = tti_cuda_alignment(g->activation ? g->y : g->c, 64);
    key.alignments[3] = g->bias ? tti_cuda_alignment(g->bias, 64) : 0;
    key.alignments[4] = g->activation ? tti_cuda_alignment(g->c, 256) : 0;
    return key;
}

/* The library's choices for a key, if it has any. */
static void tti_cuda_plan_ask(const tti_cuda *cuda, tti_blas *blas, tti_plan *plan) {
    const size_t workspace = TTI_CUDA_WORKSPACE;
    const uint32_t *a = plan->key.alignments, *b = a + 1, *c = a + 2;
    cublasLtMatmulHeuristicResult_t results[TTI_CUDA_ALGOS];
    cublasStatus_t status;
    int found = 0, i;
    tti_blas_note(blas, cublasLtMatmulPreferenceCreate(&blas->preference), "MatmulPreferenceCreate");
    tti_blas_prefer(blas, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    tti_blas_prefer(blas, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b, sizeof *b);      /* its A is our B */
    tti_blas_prefer(blas, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a, sizeof *a);
    tti_blas_prefer(blas, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c, sizeof *c);
    tti_blas_prefer(blas, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c, sizeof *c);
    if (!tti_blas_ok(blas)) { return; }
    status = cublasLtMatmulAlgoGetHeuristic(cuda->blas, blas->product, blas->b, blas->a, blas->c, blas->c,
                                            blas->preference, TTI_CUDA_ALGOS, results, &found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
        found = 0;
        status = CUBLAS_STATUS_SUCCESS;
    }
    if (!tti_blas_note(blas, status, "MatmulAlgoGetHeuristic")) { return; }
    plan->known = 1;
    plan->n = plan->at = 0;
    for (i = 0; i < found; i++) {
        if (results[i].state == CUBLAS_STATUS_SUCCESS) { plan->algos[plan->n++] = results[i].algo; }
    }
}

/* The plan of a product, asked for once. A few places from its hash on are looked at; where all are taken,
 * the first goes. NULL if a call failed. */
static tti_plan *tti_cuda_plan(tti_cuda *cuda, tti_blas *blas, const tt_gemm_args *g, int math) {
    tti_plan_key key = tti_cuda_plan_key(g, math);
    size_t hash = (size_t)tt_hash(&key, sizeof key, 0);
    tti_plan *plan = NULL;
    int i;
    if (!tti_blas_ok(blas)) { return NULL; }
    for (i = 0; i < TTI_CUDA_PLAN_PLACES; i++) {
        tti_plan *place = &cuda->plans[(hash + (size_t)i) % TTI_CUDA_PLANS];
        if (place->known && memcmp(&place->key, &key, sizeof key) == 0) { return place; }
        if (!place->known && !plan) { plan = place; }
    }
    if (!plan) { plan = &cuda->plans[hash % TTI_CUDA_PLANS]; }
    plan->known = 0;
    plan->key = key;
    tti_cuda_plan_ask(cuda, blas, plan);
    return tti_blas_ok(blas) ? plan : NULL;
}

/* Whether cuBLASLt makes this activation too: its GELU is the tanh form, and of C, which it calls aux, it
 * wants rows of a multiple of 8, 16 bytes aligned. */
static int tti_cuda_activates(const tt_gemm_args *g) {
    return g->activation == TT_GELU_TANH && !g->accumulate && g->y != g->c && g->n % 8 == 0 && g->ldc % 8 == 0
        && tti_cuda_alignment(g->c, 16) == 16;
}

static tt_status tti_cuda_gemm_blas(tt_context *ctx, const tt_gemm_args *args);

/* The product, then the activation. */
static tt_status tti_cuda_gemm_apart(tt_context *ctx, const tt_gemm_args *args) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_gemm_args g = *args;
    size_t n = (size_t)g.m * (size_t)g.n;
    tt_status status;
    g.activation = (tt_unary)0;
    status = tti_cuda_gemm_blas(ctx, &g);
    if (status != TT_OK) { return status; }
    TTI_LAUNCH(cuda, tti_gpu_activate, tti_cuda_grid(cuda, n), TTI_CUDA_THREADS, 0, *args);
    cuda->counts.activations_apart++;
    return tti_cuda_launched(ctx, "activate");
}

/* Both factors rounded to bf16. */
static tt_status tti_cuda_gemm_pack(tt_context *ctx, tt_gemm_args *g) {
    int a_rows = g->transpose_a ? g->k : g->m, a_columns = g->transpose_a ? g->m : g->k;
    int b_rows = g->transpose_b ? g->n : g->k, b_columns = g->transpose_b ? g->k : g->n;
    tt_status status =
        tti_cuda_take_packed(ctx, TTI_SCRATCH_A, g->packed_a, &g->a, a_rows, a_columns, &g->lda);
    if (status != TT_OK) { return status; }
    return tti_cuda_take_packed(ctx, TTI_SCRATCH_B, g->panels, &g->b, b_rows, b_columns, &g->ldb);
}

/* Calls the plan's algorithms until one takes the product. */
static void tti_cuda_gemm_call(tti_cuda *cuda, tti_blas *blas, tti_plan *plan, const tt_gemm_args *g) {
    const float one = 1.0f, beta = g->accumulate ? 1.0f : 0.0f;
    float *out = g->activation ? g->y : g->c;
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (plan->at < plan->n && !tti_cuda_goes(cuda, plan->key, plan->at, g->a, g->b, g->c, g->y, g->bias)) {
        return;
    }
    for (; plan->at < plan->n; plan->at++) {
        status = cublasLtMatmul(cuda->blas, blas->product, &one, g->b, blas->b, g->a, blas->a, &beta, out,
                                blas->c, out, blas->c, &plan->algos[plan->at], cuda->workspace,
                                TTI_CUDA_WORKSPACE, cuda->stream);
        if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) { break; }
    }
    tti_blas_note(blas, status, "Matmul");
}

/* bf16: both factors are rounded first, unless there are so few rows that reading the weights is all the
 * work, and they were not rounded before. A shape that cuBLASLt does not take is made in our tiles. */
static tt_status tti_cuda_gemm_blas(tt_context *ctx, const tt_gemm_args *args) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_gemm_args g = *args;
    tti_blas blas;
    tti_plan *plan;
    int few = g.m <= 32 && !g.transpose_a && !g.panels;
    int math = cuda->math == TT_CUDA_BF16 && few ? TT_CUDA_TF32 : cuda->math;
    if (g.activation && !tti_cuda_activates(&g)) { return tti_cuda_gemm_apart(ctx, args); }
    if (math == TT_CUDA_BF16 && tti_cuda_gemm_pack(ctx, &g) != TT_OK) { return tt_error_status(ctx); }
    tti_blas_begin(&blas, &g, math);
    plan = tti_cuda_plan(cuda, &blas, &g, math);
    if (plan) { tti_cuda_gemm_call(cuda, &blas, plan, &g); }
    tti_blas_end(&blas);
    if (tti_blas_ok(&blas)) {
        cuda->counts.gemm_blas++;
        cuda->counts.activations_fused += g.activation != 0;
        return TT_OK;
    }
    if (blas.status == CUBLAS_STATUS_NOT_SUPPORTED || blas.status == CUBLAS_STATUS_INVALID_VALUE) {
        cuda->counts.gemm_refused++;
        return args->activation ? tti_cuda_gemm_apart(ctx, args) : tti_cuda_gemm_tiles(ctx, args);
    }
    if (cuda->held) {
        cuda->lost = 1;
        return TT_OK;
    }
    return tt_fail(ctx, TT_ERR_DEVICE, "cuda: cublasLt%s fails with status %d at m %d, n %d, k %d", blas.call,
                   (int)blas.status, args->m, args->n, args->k);
}
#endif

static tt_status tti_cuda_gemm(tt_context *ctx, const tt_gemm_args *args) {
    const tti_cuda *cuda = tti_cuda_of(ctx);
    if (args->m < 0 || args->n < 0 || args->k < 0) {
        return tt_fail(ctx, TT_ERR_ARG, "gemm: m, n, k are %d, %d, %d, expected >= 0", args->m, args->n,
                       args->k);
    }
    if (args->m == 0 || args->n == 0 || (args->k == 0 && args->accumulate && !args->activation)) {
        return TT_OK;
    }
    if (args->k == 0 || cuda->kernels == TT_CUDA_NAIVE) { return tti_cuda_gemm_naive(ctx, args); }
#ifndef TT_CUDA_NO_CUBLAS
    if (cuda->kernels == TT_CUDA_FAST) { return tti_cuda_gemm_blas(ctx, args); }
#endif
    return tti_cuda_gemm_tiles(ctx, args);
}

/* ---- [tt:cuda.attention] attention ----
 *     p = softmax(scale q k'),  out = p v
 *     dv = p' dout,  ds = p (dout v' - delta),  dq = scale ds k,  dk = scale ds' q,  delta = sum_d dout out
 * Source: FlashAttention-2, Dao 2023, arXiv 2307.08691; lse = log sum exp of a row's scores is what the
 * forward keeps. The queries of one key-value head are one matrix: row r is token r / group, head r %
 * group. */

/* One sequence: its first token and their number, position of the first, row of its first key, heads a
 * group. */
typedef struct tti_heads {
    int first, tokens, position, key_row, group;
} tti_heads;

static __device__ __forceinline__ tti_heads tti_gpu_heads(const tt_attention_args &a, int s) {
    tti_heads seq;
    seq.first = a.offsets[s];
    seq.tokens = a.offsets[s + 1] - seq.first;
    seq.position = a.query_start ? a.query_start[s] : 0;
    seq.key_row = a.key_start ? a.key_start[s] : seq.first;
    seq.group = a.n_heads / a.n_kv_heads;
    return seq;
}

/* Of x [tokens, n_heads * head_dim] the rows of a sequence that belong to a key-value head. */
static __device__ __forceinline__ tti_lines tti_gpu_rows(const tt_attention_args &a, const tti_heads &seq,
                                                         const float *x, int kv_head) {
    size_t dim = (size_t)a.head_dim, step = (size_t)a.n_heads * dim;
    const float *first = x + (size_t)seq.first * step + (size_t)(kv_head * seq.group) * dim;
    tti_lines lines = {first, step, dim, seq.group};
    return lines;
}

/* Of k or v [rows, n_kv_heads * head_dim], whose lines are positions. */
static __device__ __forceinline__ tti_lines tti_gpu_keys(const tt_attention_args &a, const tti_heads &seq,
                                                         const float *x, int kv_head) {
    size_t dim = (size_t)a.head_dim, step = (size_t)a.n_kv_heads * dim;
    tti_lines lines = {x + (size_t)seq.key_row * step + (size_t)kv_head * dim, step, 0, 1};
    return lines;
}

/* The sequence s with offsets[s] <= token < offsets[s + 1]. */
static __device__ int tti_gpu_sequence_of(const tt_attention_args &a, int token) {
    int low = 0, high = a.n_sequences;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (a.offsets[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

static __device__ float tti_gpu_dot(const float *x, const float *y, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) { sum = fmaf(x[i], y[i], sum); }
    return sum;
}

/* Naive: a thread for each token and head. */
static __global__ void tti_gpu_attention_forward(tt_attention_args a) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_heads) {
        int token = (int)(i / (size_t)a.n_heads), head = (int)(i % (size_t)a.n_heads), dim = a.head_dim;
        tti_heads seq = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines k = tti_gpu_keys(a, seq, a.k, head / seq.group);
        tti_lines v = tti_gpu_keys(a, seq, a.v, head / seq.group);
        const float *q = a.q + i * (size_t)dim;
        float *out = a.out + i * (size_t)dim, max = -INFINITY, sum = 0.0f;
        int n_keys = seq.position + token - seq.first + 1;
        for (int j = 0; j < n_keys; j++) {
            max = fmaxf(max, a.scale * tti_gpu_dot(q, tti_gpu_line(k, j), dim));
        }
        for (int d = 0; d < dim; d++) { out[d] = 0.0f; }
        for (int j = 0; j < n_keys; j++) {
            float p = expf(a.scale * tti_gpu_dot(q, tti_gpu_line(k, j), dim) - max);
            sum += p;
            for (int d = 0; d < dim; d++) { out[d] = fmaf(p, tti_gpu_line(v, j)[d], out[d]); }
        }
        for (int d = 0; d < dim; d++) { out[d] /= sum; }
        if (a.lse) { a.lse[i] = max + logf(sum); }
    }
}

/* p and ds of one row and key of a packed batch. */
static __device__ void tti_gpu_attention_slope(const tt_attention_args &a, const float *delta, size_t row,
                                               const float *k, const float *v, float *p, float *ds) {
    size_t at = row * (size_t)a.head_dim;
    *p = expf(a.scale * tti_gpu_dot(a.q + at, k, a.head_dim) - a.lse[row]);
    *ds = *p * (tti_gpu_dot(a.dout + at, v, a.head_dim) - delta[row]);
}

/* Naive: a thread for each token and head. */
static __global__ void tti_gpu_attention_dq(tt_attention_args a, const float *delta) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_heads) {
        int token = (int)(i / (size_t)a.n_heads), head = (int)(i % (size_t)a.n_heads);
        tti_heads seq = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines k = tti_gpu_keys(a, seq, a.k, head / seq.group);
        tti_lines v = tti_gpu_keys(a, seq, a.v, head / seq.group);
        float *dq = a.dq + i * (size_t)a.head_dim, p, ds;
        for (int j = 0; j <= token - seq.first; j++) {
            tti_gpu_attention_slope(a, delta, i, tti_gpu_line(k, j), tti_gpu_line(v, j), &p, &ds);
            for (int d = 0; d < a.head_dim; d++) { dq[d] = fmaf(a.scale * ds, tti_gpu_line(k, j)[d], dq[d]); }
        }
    }
}

/* Naive: a thread for each key and key-value head. */
static __global__ void tti_gpu_attention_dkv(tt_attention_args a, const float *delta) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_kv_heads) {
        int token = (int)(i / (size_t)a.n_kv_heads), kv_head = (int)(i % (size_t)a.n_kv_heads);
        int dim = a.head_dim;
        tti_heads seq = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines queries = tti_gpu_rows(a, seq, a.q, kv_head);
        tti_lines douts = tti_gpu_rows(a, seq, a.dout, kv_head);
        size_t at = i * (size_t)dim;
        float p, ds;
        for (int r = (token - seq.first) * seq.group; r < seq.tokens * seq.group; r++) {
            const float *q = tti_gpu_line(queries, r), *dout = tti_gpu_line(douts, r);
            size_t row = (size_t)(q - a.q) / (size_t)dim;
            tti_gpu_attention_slope(a, delta, row, a.k + at, a.v + at, &p, &ds);
            for (int d = 0; a.dv && d < dim; d++) {
                a.dv[at + (size_t)d] = fmaf(p, dout[d], a.dv[at + (size_t)d]);
            }
            for (int d = 0; a.dk && d < dim; d++) {
                a.dk[at + (size_t)d] = fmaf(a.scale * ds, q[d], a.dk[at + (size_t)d]);
            }
        }
    }
}

/* delta[row] = sum_d dout out; a warp for each row. */
static __global__ void tti_gpu_attention_delta(float *delta, const float *dout, const float *out, size_t rows,
                                               int dim) {
    size_t row = (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    float sum = 0.0f;
    if (row < rows) {
        for (int d = (int)(threadIdx.x % 32); d < dim; d += 32) {
            sum = fmaf(dout[row * (size_t)dim + (size_t)d], out[row * (size_t)dim + (size_t)d], sum);
        }
    }
    for (int step = 16; step > 0; step /= 2) { sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step); }
    if (row < rows && threadIdx.x % 32 == 0) { delta[row] = sum; }
}

/* In tiles: a block owns rows of q (keys for dk, dv), each warp 16 of them with all channels in its
 * registers; keys and values (queries and dout) pass by. What passes is copied as floats to a landing of its
 * own while the tile before is in use, and from there, rounded, into the tile: a thread takes what it has
 * copied itself. Scores never leave the registers, since a result of mma is laid out as its factor.
 * Grid: sequence, block (the longest first), key-value head. Tiles of keys begin at key 0 and rows meet them
 * one by one, so a row's bits do not depend on where its block begins. DIM is head_dim rounded up to 64, 128
 * or 256; channels beyond it are 0.
 *
 * A line of a tile is DIM values in chunks of 16 bytes; chunk c of line r stands in the place of chunk
 * c ^ (r % 8). A line is a multiple of 128 bytes, so a chunk's place modulo 8 tells its four of the 32 banks:
 *     ldmatrix         chunk c of lines 0..7: the places (c ^ r) % 8 are the 8 different ones
 *     a turned float   lane 4g + t reads line 2t (+ 1), channel 8j + g: chunks 2j and 2j + 1 of lines
 *                      0, 2, 4, 6 (1, 3, 5, 7) are again 8 different ones, four words each
 *     a store          neighbouring lanes write neighbouring chunks of one line */
template <int MATH, int DIM>
struct tti_tile_of {
    enum {
        words = DIM * (int)sizeof(typename tti_mode<MATH>::element) / 4,
        steps = DIM / tti_mode<MATH>::step,     /* of k */
        split = MATH == TT_CUDA_F32 && DIM == 256 ? 2 : 1,      /* warps that share rows and channels */
        each = DIM / split                      /* channels of a warp */
    };
};

/* Chunk number chunk + more, of which no bit is in both: the compiler knows chunk, the thread more. */
template <int MATH, int DIM>
static __device__ __forceinline__ uint32_t *tti_gpu_chunk(uint32_t *tile, int line, int chunk, int more) {
    const int place = (chunk & ~7) + ((more ^ (line & 7)) ^ (chunk & 7));
    return tile + line * tti_tile_of<MATH, DIM>::words + place * 4;
}

/* Bytes of shared memory where `own` tiles of `rows` lines stay and two of `lines` pass. */
template <int MATH, int DIM>
static size_t tti_cuda_tile_bytes(size_t own, size_t rows, size_t lines) {
    size_t tile = sizeof(uint32_t) * tti_tile_of<MATH, DIM>::words, landing = sizeof(float) * DIM;
    return own * rows * tile + 2 * lines * (tile + landing);
}

/* LINES lines from line first on are sent to their landing; what lies beyond `lines` and `dim` is 0. */
template <int DIM, int LINES, int THREADS>
static __device__ __forceinline__ void tti_gpu_send(float *landing, const tti_lines &from, int first,
                                                    int lines, int dim) {
    enum { WIDTH = DIM / 4, STRIDE = THREADS / WIDTH };      /* chunks of a line; lines at once */
    const int id = tti_gpu_thread(), x = id % WIDTH * 4;
    const int whole = dim % 4 == 0 && (uintptr_t)from.p % 16 == 0;
    TTI_GPU_ROLLED
    for (int line = id / WIDTH; line < LINES; line += STRIDE) {
        const int n = line < lines ? dim - x : 0;
        const float *p = n > 0 ? tti_gpu_line(from, first + line) + x : from.p;
        float *to = landing + line * DIM + x;
        if (whole) {
            tti_gpu_copy<16>(to, p, n > 0 ? 16 : 0);
        } else {
            for (int j = 0; j < 4; j++) { tti_gpu_copy<4>(to + j, j < n ? p + j : from.p, j < n ? 4 : 0); }
        }
    }
}

/* And taken from there, each chunk by the thread that sent it. */
template <int MATH, int DIM, int LINES, int THREADS>
static __device__ __forceinline__ void tti_gpu_take(uint32_t *tile, const float *landing) {
    enum { WIDTH = DIM / 4, STRIDE = THREADS / WIDTH };
    const int id = tti_gpu_thread(), c = id % WIDTH;
    TTI_GPU_ROLLED
    for (int line = id / WIDTH; line < LINES; line += STRIDE) {
        float4 x = ((const float4 *)landing)[line * WIDTH + c];
        if (MATH == TT_CUDA_BF16) {
            uint2 pairs = {tti_gpu_bf16_pair(x.x, x.y), tti_gpu_bf16_pair(x.z, x.w)};
            *(uint2 *)(tti_gpu_chunk<MATH, DIM>(tile, line, 0, c / 2) + c % 2 * 2) = pairs;
        } else {
            if (MATH == TT_CUDA_TF32) {
                x.x = __uint_as_float(tti_gpu_tf32(x.x));
                x.y = __uint_as_float(tti_gpu_tf32(x.y));
                x.z = __uint_as_float(tti_gpu_tf32(x.z));
                x.w = __uint_as_float(tti_gpu_tf32(x.w));
            }
            *(float4 *)tti_gpu_chunk<MATH, DIM>(tile, line, 0, c) = x;
        }
    }
}

/* Of two streams LINES lines from line first on, of `all`, are sent, the second behind the first. */
template <int DIM, int LINES, int THREADS>
static __device__ __forceinline__ void tti_gpu_send_both(float *landing, const tti_lines &a,
                                                         const tti_lines &b, int first, int all, int dim) {
    tti_gpu_send<DIM, LINES, THREADS>(landing, a, first, all - first, dim);
    tti_gpu_send<DIM, LINES, THREADS>(landing + LINES * DIM, b, first, all - first, dim);
}

/* Both have landed and become tiles when no warp reads the ones before any more, and those from line `next`
 * on are sent. The tiles are whole behind the caller's barrier. */
template <int MATH, int DIM, int LINES, int THREADS>
static __device__ __forceinline__ void tti_gpu_pass(uint32_t *tile, float *landing, const tti_lines &a,
                                                    const tti_lines &b, int next, int all, int dim) {
    tti_gpu_copied();
    __syncthreads();
    tti_gpu_take<MATH, DIM, LINES, THREADS>(tile, landing);
    tti_gpu_take<MATH, DIM, LINES, THREADS>(tile + LINES * tti_tile_of<MATH, DIM>::words,
                                            landing + LINES * DIM);
    if (next < all) { tti_gpu_send_both<DIM, LINES, THREADS>(landing, a, b, next, all, dim); }
}

/* A tile of LINES lines that stays, AT_ONCE of them through the landing at a time. */
template <int MATH, int DIM, int LINES, int AT_ONCE, int THREADS>
static __device__ __forceinline__ void tti_gpu_own(uint32_t *tile, float *landing, const tti_lines &from,
                                                   int first, int lines, int dim) {
    for (int i = 0; i < LINES; i += AT_ONCE) {
        tti_gpu_send<DIM, AT_ONCE, THREADS>(landing, from, first + i, lines - i, dim);
        tti_gpu_copied();
        tti_gpu_take<MATH, DIM, AT_ONCE, THREADS>(tile + i * tti_tile_of<MATH, DIM>::words, landing);
    }
}

/* Fragments of step p of k: of A from 16 lines, of two tiles of B from 16 lines that are its columns. */
template <int MATH, int DIM>
static __device__ __forceinline__ void tti_gpu_fragment_a(uint32_t a[4], uint32_t *tile, int lane, int p) {
    tti_gpu_ldmatrix<0>(a, tti_gpu_chunk<MATH, DIM>(tile, lane % 16, 2 * p, lane / 16));
}

template <int MATH, int DIM>
static __device__ __forceinline__ void tti_gpu_fragment_b(uint32_t b[2][2], uint32_t *tile, int lane,
                                                          int p) {
    tti_gpu_ldmatrix<0>(b[0], tti_gpu_chunk<MATH, DIM>(tile, lane / 16 * 8 + lane % 8, 2 * p, lane / 8 % 2));
}

/* Of two tiles of B, columns 16 j on, from lines that are its k. Columns t and t + 4 of a step of floats are
 * lines 2t and 2t + 1, as tti_gpu_turn has them; volatile, so that not all are read long before their use. */
template <int MATH, int DIM>
static __device__ __forceinline__ void tti_gpu_fragment_turned(uint32_t b[2][2], uint32_t *tile,
                                                               int lane, int j) {
    const int g = lane / 4, t = lane % 4;
    if (MATH == TT_CUDA_BF16) {
        tti_gpu_ldmatrix<1>(b[0], tti_gpu_chunk<MATH, DIM>(tile, lane % 16, 2 * j, lane / 16));
    } else {
        TTI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            volatile uint32_t *from = tti_gpu_chunk<MATH, DIM>(tile, 2 * t + i % 2, 4 * j + i / 2 * 2, g / 4);
            b[i / 2][i % 2] = from[g % 4];
        }
    }
}

/* A step of scores as the fragment of A of the next product: s is one tile of results, for bf16 two. */
template <int MATH>
static __device__ __forceinline__ void tti_gpu_turn(uint32_t a[4], float (*s)[4]) {
    TTI_GPU_UNROLL
    for (int i = 0; i < 4; i++) {
        if (MATH == TT_CUDA_BF16) {
            a[i] = tti_gpu_bf16_pair(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
        } else {
            float x = s[0][i % 2 * 2 + i / 2];
            a[i] = MATH == TT_CUDA_TF32 ? tti_gpu_tf32(x) : __float_as_uint(x);
        }
    }
}

/* score = rows columns', 16 rows of a warp by N, over the first `steps` steps of k. */
template <int MATH, int DIM, int N>
static __device__ __forceinline__ void tti_gpu_scores(float score[N / 8][4], uint32_t *rows,
                                                      uint32_t *columns, int steps) {
    const int lane = tti_gpu_thread() % 32;
    uint32_t row[4], a[1][4], b[2][2];
    TTI_GPU_UNROLL
    for (int j = 0; j < N / 2; j++) { score[j / 4][j % 4] = 0.0f; }
    TTI_GPU_UNROLL_TWO
    for (int p = 0; p < steps; p++) {
        tti_gpu_fragment_a<MATH, DIM>(row, rows, lane, p);
        TTI_GPU_UNROLL
        for (int j = 0; j < N / 16; j++) {
            TTI_GPU_UNROLL
            for (int i = 0; i < 4; i++) { a[0][i] = row[i]; }      /* which a step may split */
            tti_gpu_fragment_b<MATH, DIM>(b, columns + j * 16 * tti_tile_of<MATH, DIM>::words, lane, p);
            tti_gpu_step<MATH, 1, 2>((float(*)[2][4])(score + 2 * j), a, b);
        }
    }
}

/* out += s x, 16 rows of a warp; x has N lines. */
template <int MATH, int DIM, int N>
static __device__ __forceinline__ void tti_gpu_attend(float out[][4], float s[N / 8][4], uint32_t *x) {
    typedef tti_tile_of<MATH, DIM> tile;
    enum { STEP = tti_mode<MATH>::step };
    const int id = tti_gpu_thread(), lane = id % 32;
    x += id / 32 % tile::split * (tile::words / tile::split);
    uint32_t a[1][4], b[2][2];
    TTI_GPU_UNROLL
    for (int p = 0; p < N / STEP; p++) {
        TTI_GPU_UNROLL
        for (int j = 0; j < tile::each / 16; j++) {
            tti_gpu_turn<MATH>(a[0], s + p * STEP / 8);
            tti_gpu_fragment_turned<MATH, DIM>(b, x + p * STEP * tile::words, lane, j);
            tti_gpu_step<MATH, 1, 2>((float(*)[2][4])(out + 2 * j), a, b);
        }
    }
}

/* Rounded factors do not need the last bits of exp. */
template <int MATH>
static __device__ __forceinline__ float tti_gpu_exp(float x) {
    return MATH == TT_CUDA_F32 ? expf(x) : tti_gpu_exp2(1.44269504f * x);
}

/* The first of the warp's 16 rows of the block; row of the thread's results [j][r], and their column among N
 * tiles, with a walk over them. */
#define TTI_WARP_ROW ((int)threadIdx.x / 32 / tti_tile_of<MATH, DIM>::split * 16)
#define TTI_ROW(r) (TTI_WARP_ROW + (int)threadIdx.x % 32 / 4 + (r) / 2 * 8)
#define TTI_COLUMN(j, r) ((j) * 8 + (int)threadIdx.x % 4 * 2 + (r) % 2)
#define TTI_EACH_RESULT(N, j, r)               \
    TTI_GPU_UNROLL for (int j = 0; j < N; j++) \
        TTI_GPU_UNROLL for (int r = 0; r < 4; r++)

/* The online softmax of a tile of scores: each becomes exp(score - max); max of a row so far, the thread's
 * part of its sum, which shrinks with what out holds by exp(old max - max). */
template <int MATH, int DIM, int KEYS>
static __device__ __forceinline__ void tti_gpu_softmax_tile(float score[KEYS / 8][4], float max[2],
                                                            float sum[2], float out[][4]) {
    float shrink[2];
    TTI_GPU_UNROLL
    for (int i = 0; i < 2; i++) {
        float top = max[i];
        TTI_GPU_UNROLL
        for (int j = 0; j < KEYS / 8; j++) {
            top = fmaxf(top, fmaxf(score[j][2 * i], score[j][2 * i + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
        shrink[i] = tti_gpu_exp<MATH>(max[i] - top);
        max[i] = top;
        sum[i] *= shrink[i];
    }
    TTI_EACH_RESULT(KEYS / 8, j, r) {
        score[j][r] = tti_gpu_exp<MATH>(score[j][r] - max[r / 2]);
        sum[r / 2] += score[j][r];
    }
    if (__ballot_sync(0xFFFFFFFFu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
        TTI_EACH_RESULT((tti_tile_of<MATH, DIM>::each / 8), j, r) { out[j][r] *= shrink[r / 2]; }
    }
}

/* A thread's results, times the factor of their row, put or added to lines first on, of which n are there. */
template <int MATH, int DIM>
static __device__ __forceinline__ void tti_gpu_put_results(const tti_lines &to, int first, int n, int dim,
                                                           int adds, float out[][4], const float factor[2]) {
    typedef tti_tile_of<MATH, DIM> tile;
    const int channel = (int)threadIdx.x / 32 % tile::split * tile::each;
    TTI_GPU_UNROLL
    for (int i = 0; i < 2; i++) {
        if (TTI_ROW(2 * i) >= n) { continue; }
        float *line = (float *)tti_gpu_line(to, first + TTI_ROW(2 * i));
        const int pairs = dim % 2 == 0 && (uintptr_t)line % 8 == 0;
        TTI_GPU_UNROLL
        for (int j = 0; j < tile::each / 8; j++) {
            const int column = channel + TTI_COLUMN(j, 0);
            float *at = line + column;
            float2 x = {out[j][2 * i] * factor[i], out[j][2 * i + 1] * factor[i]};
            if (pairs && column < dim) {
                float2 before = {0.0f, 0.0f};
                if (adds) { before = *(float2 *)at; }
                x.x += before.x;
                x.y += before.y;
                *(float2 *)at = x;
            } else {
                if (column < dim) { at[0] = adds ? at[0] + x.x : x.x; }
                if (column + 1 < dim) { at[1] = adds ? at[1] + x.y : x.y; }
            }
        }
    }
}

/* Of a row of the block the place in lse and delta. */
static __device__ __forceinline__ size_t tti_gpu_statistic(const tt_attention_args &a, const tti_heads &seq,
                                                           int kv_head, int row) {
    size_t token = (size_t)(seq.first + row / seq.group);
    return token * (size_t)a.n_heads + (size_t)(kv_head * seq.group + row % seq.group);
}

/* The rows that a block owns. Asked for once more behind the loop, so that no register holds them in it. */
typedef struct tti_owned {
    tti_heads seq;
    int kv_head, row0, rows;
} tti_owned;

template <int ROWS>
static __device__ __forceinline__ tti_owned tti_gpu_block(const tt_attention_args &a) {
    tti_owned b;
    b.seq = tti_gpu_heads(a, (int)blockIdx.x);
    const int all_rows = b.seq.tokens * b.seq.group, n_blocks = (all_rows + ROWS - 1) / ROWS;
    b.kv_head = (int)blockIdx.z;
    b.row0 = (n_blocks - 1 - (int)blockIdx.y) * ROWS;
    b.rows = min(ROWS, all_rows - b.row0);
    return b;
}

/* Blocks a multiprocessor that are to fit by their registers; small: of 4 warps. */
#define TTI_BLOCKS(own, small) (DIM == 256 ? 1 : DIM == 64 && (own) == 64 ? (small) : 2)

/* Shared memory: q [ROWS], k [KEYS], v [KEYS], landings of k and v [KEYS][DIM]. */
template <int MATH, int DIM, int ROWS, int KEYS>
static __global__ void __launch_bounds__(2 * ROWS * tti_tile_of<MATH, DIM>::split, TTI_BLOCKS(ROWS, 3))
    tti_gpu_attention_forward_tiles(tt_attention_args a) {
    enum { WORDS = tti_tile_of<MATH, DIM>::words, CHANNELS = tti_tile_of<MATH, DIM>::each };
    enum { THREADS = 2 * ROWS * tti_tile_of<MATH, DIM>::split };
    TTI_DYNAMIC_SHARED(shared);
    uint32_t *q = (uint32_t *)shared, *k = q + ROWS * WORDS, *v = k + KEYS * WORDS;
    float *landing = (float *)(v + KEYS * WORDS);
    const tti_owned block = tti_gpu_block<ROWS>(a);
    const tti_heads seq = block.seq;
    const int kv_head = block.kv_head, dim = a.head_dim, row0 = block.row0, rows = block.rows;
    const int steps = (dim + tti_mode<MATH>::step - 1) / tti_mode<MATH>::step;
    const int n_keys = seq.position + (row0 + rows - 1) / seq.group + 1;
    const tti_lines keys = tti_gpu_keys(a, seq, a.k, kv_head), values = tti_gpu_keys(a, seq, a.v, kv_head);
    const tti_lines queries = tti_gpu_rows(a, seq, a.q, kv_head);
    float out[CHANNELS / 8][4], score[KEYS / 8][4], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    if (row0 < 0) { return; }
    /* The last key that the thread's rows see, and any of the warp. */
    const int sees[2] = {seq.position + (row0 + TTI_ROW(0)) / seq.group,
                         seq.position + (row0 + TTI_ROW(2)) / seq.group};
    const int one_sees = TTI_WARP_ROW < rows ? seq.position + (row0 + TTI_WARP_ROW + 15) / seq.group : -1;
    TTI_EACH_RESULT(CHANNELS / 8, j, r) { out[j][r] = 0.0f; }
    tti_gpu_own<MATH, DIM, ROWS, 2 * KEYS, THREADS>(q, landing, queries, row0, rows, dim);
    tti_gpu_send_both<DIM, KEYS, THREADS>(landing, keys, values, 0, n_keys, dim);
    for (int key0 = 0; key0 < n_keys; key0 += KEYS) {
        tti_gpu_pass<MATH, DIM, KEYS, THREADS>(k, landing, keys, values, key0 + KEYS, n_keys, dim);
        __syncthreads();
        if (key0 > one_sees) { continue; }
        tti_gpu_scores<MATH, DIM, KEYS>(score, q + TTI_WARP_ROW * WORDS, k, steps);
        TTI_EACH_RESULT(KEYS / 8, j, r) {
            int seen = key0 + TTI_COLUMN(j, r) <= sees[r / 2];
            score[j][r] = seen ? a.scale * score[j][r] : -INFINITY;
        }
        tti_gpu_softmax_tile<MATH, DIM, KEYS>(score, max, sum, out);
        tti_gpu_attend<MATH, DIM, KEYS>(out, score, v);
    }
    const tti_owned to = tti_gpu_block<ROWS>(a);
    TTI_GPU_UNROLL
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], 2);
        if (a.lse && TTI_ROW(2 * i) < to.rows && threadIdx.x % 4 == 0) {
            a.lse[tti_gpu_statistic(a, to.seq, to.kv_head, to.row0 + TTI_ROW(2 * i))] = max[i] + logf(sum[i]);
        }
        sum[i] = 1.0f / sum[i];
    }
    tti_gpu_put_results<MATH, DIM>(tti_gpu_rows(a, to.seq, a.out, to.kv_head), to.row0, to.rows, a.head_dim,
                                   0, out, sum);
}

/* A block of rows goes over its keys. Shared memory: q, dout [ROWS], k, v [KEYS], their landings. */
template <int MATH, int DIM, int ROWS, int KEYS>
static __global__ void __launch_bounds__(2 * ROWS * tti_tile_of<MATH, DIM>::split, TTI_BLOCKS(ROWS, 3))
    tti_gpu_attention_dq_tiles(tt_attention_args a, const float *delta_all, int adds) {
    enum { WORDS = tti_tile_of<MATH, DIM>::words, CHANNELS = tti_tile_of<MATH, DIM>::each };
    enum { THREADS = 2 * ROWS * tti_tile_of<MATH, DIM>::split };
    TTI_DYNAMIC_SHARED(shared);
    uint32_t *q = (uint32_t *)shared, *dout = q + ROWS * WORDS;
    uint32_t *k = dout + ROWS * WORDS, *v = k + KEYS * WORDS;
    float *landing = (float *)(v + KEYS * WORDS);
    const tti_owned block = tti_gpu_block<ROWS>(a);
    const tti_heads seq = block.seq;
    const int kv_head = block.kv_head, dim = a.head_dim, row0 = block.row0, rows = block.rows;
    const int steps = (dim + tti_mode<MATH>::step - 1) / tti_mode<MATH>::step;
    const int n_keys = (row0 + rows - 1) / seq.group + 1;
    const tti_lines keys = tti_gpu_keys(a, seq, a.k, kv_head), values = tti_gpu_keys(a, seq, a.v, kv_head);
    const tti_lines queries = tti_gpu_rows(a, seq, a.q, kv_head);
    const tti_lines douts = tti_gpu_rows(a, seq, a.dout, kv_head);
    float dq[CHANNELS / 8][4], score[KEYS / 8][4], dp[KEYS / 8][4], lse[2], delta[2];      /* dp = dout v' */
    if (row0 < 0) { return; }
    const int sees[2] = {(row0 + TTI_ROW(0)) / seq.group, (row0 + TTI_ROW(2)) / seq.group};
    const int one_sees = TTI_WARP_ROW < rows ? (row0 + TTI_WARP_ROW + 15) / seq.group : -1;
    TTI_EACH_RESULT(CHANNELS / 8, j, r) { dq[j][r] = 0.0f; }
    for (int i = 0; i < 2; i++) {
        size_t at = tti_gpu_statistic(a, seq, kv_head, row0 + min(TTI_ROW(2 * i), rows - 1));
        lse[i] = a.lse[at];
        delta[i] = delta_all[at];
    }
    tti_gpu_own<MATH, DIM, ROWS, 2 * KEYS, THREADS>(q, landing, queries, row0, rows, dim);
    tti_gpu_own<MATH, DIM, ROWS, 2 * KEYS, THREADS>(dout, landing, douts, row0, rows, dim);
    tti_gpu_send_both<DIM, KEYS, THREADS>(landing, keys, values, 0, n_keys, dim);
    for (int key0 = 0; key0 < n_keys; key0 += KEYS) {
        tti_gpu_pass<MATH, DIM, KEYS, THREADS>(k, landing, keys, values, key0 + KEYS, n_keys, dim);
        __syncthreads();
        if (key0 > one_sees) { continue; }
        tti_gpu_scores<MATH, DIM, KEYS>(score, q + TTI_WARP_ROW * WORDS, k, steps);
        tti_gpu_scores<MATH, DIM, KEYS>(dp, dout + TTI_WARP_ROW * WORDS, v, steps);
        TTI_EACH_RESULT(KEYS / 8, j, r) {   /* ds */
            int seen = key0 + TTI_COLUMN(j, r) <= sees[r / 2];
            float p = seen ? tti_gpu_exp<MATH>(a.scale * score[j][r] - lse[r / 2]) : 0.0f;
            score[j][r] = p * (dp[j][r] - delta[r / 2]);
        }
        tti_gpu_attend<MATH, DIM, KEYS>(dq, score, k);
    }
    const tti_owned to = tti_gpu_block<ROWS>(a);
    const float scale[2] = {a.scale, a.scale};
    tti_gpu_put_results<MATH, DIM>(tti_gpu_rows(a, to.seq, a.dq, to.kv_head), to.row0, to.rows, a.head_dim,
                                   adds, dq, scale);
}

/* lse and delta of ROWS rows are sent with them; threads 0 .. 2 ROWS - 1. */
template <int ROWS>
static __device__ __forceinline__ void tti_gpu_send_statistics(float *landing, const tt_attention_args &a,
                                                               const tti_heads &seq, const float *delta,
                                                               int kv_head, int row0, int all_rows) {
    const int i = (int)threadIdx.x, row = row0 + i % ROWS;
    if (i >= 2 * ROWS) { return; }
    size_t at = tti_gpu_statistic(a, seq, kv_head, min(row, all_rows - 1));
    tti_gpu_copy<4>(landing + i, (i < ROWS ? a.lse : delta) + at, row < all_rows ? 4 : 0);
}

/* A block of keys goes over the rows that see it; scores stand turned, keys by rows. PARTS: what it makes.
 * Rows beyond the last are 0, and add nothing. Shared memory: k, v [KEYS], q, dout [ROWS], their landings,
 * lse and delta [ROWS], their landing. */
#define TTI_DK 1
#define TTI_DV 2
template <int MATH, int DIM, int KEYS, int ROWS, int PARTS>
static __global__ void __launch_bounds__(2 * KEYS * tti_tile_of<MATH, DIM>::split, TTI_BLOCKS(KEYS, 4))
    tti_gpu_attention_dkv_tiles(tt_attention_args a, const float *delta_all, int adds_dk, int adds_dv) {
    enum { WORDS = tti_tile_of<MATH, DIM>::words, CHANNELS = tti_tile_of<MATH, DIM>::each };
    enum { THREADS = 2 * KEYS * tti_tile_of<MATH, DIM>::split };
    TTI_DYNAMIC_SHARED(shared);
    uint32_t *k = (uint32_t *)shared, *v = k + KEYS * WORDS;
    uint32_t *q = v + KEYS * WORDS, *dout = q + ROWS * WORDS;
    float *landing = (float *)(dout + ROWS * WORDS);
    float *lse = landing + 2 * ROWS * DIM, *delta = lse + ROWS, *landed = delta + ROWS;
    const tti_heads seq = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.z, dim = a.head_dim, all_rows = seq.tokens * seq.group;
    const int steps = (dim + tti_mode<MATH>::step - 1) / tti_mode<MATH>::step;
    const int key0 = (int)blockIdx.y * KEYS, n = min(KEYS, seq.tokens - key0);
    const tti_lines keys = tti_gpu_keys(a, seq, a.k, kv_head), values = tti_gpu_keys(a, seq, a.v, kv_head);
    const tti_lines queries = tti_gpu_rows(a, seq, a.q, kv_head);
    const tti_lines douts = tti_gpu_rows(a, seq, a.dout, kv_head);
    const int first = key0 * seq.group;
    /* The first rows that see the thread's keys, and the warp's. */
    const int seen_by[2] = {(key0 + TTI_ROW(0)) * seq.group, (key0 + TTI_ROW(2)) * seq.group};
    const int one_seen_by = TTI_WARP_ROW < n ? (key0 + TTI_WARP_ROW) * seq.group : INT_MAX;
    float dk[PARTS & TTI_DK ? CHANNELS / 8 : 1][4], dv[PARTS & TTI_DV ? CHANNELS / 8 : 1][4];
    float p[ROWS / 8][4], ds[ROWS / 8][4];
    if (n <= 0) { return; }
    TTI_EACH_RESULT((PARTS & TTI_DK ? CHANNELS / 8 : 1), j, r) { dk[j][r] = 0.0f; }
    TTI_EACH_RESULT((PARTS & TTI_DV ? CHANNELS / 8 : 1), j, r) { dv[j][r] = 0.0f; }
    tti_gpu_own<MATH, DIM, KEYS, 2 * ROWS, THREADS>(k, landing, keys, key0, n, dim);
    tti_gpu_own<MATH, DIM, KEYS, 2 * ROWS, THREADS>(v, landing, values, key0, n, dim);
    tti_gpu_send_both<DIM, ROWS, THREADS>(landing, queries, douts, first, all_rows, dim);
    tti_gpu_send_statistics<ROWS>(landed, a, seq, delta_all, kv_head, first, all_rows);
    for (int row0 = first; row0 < all_rows; row0 += ROWS) {
        const int next = row0 + ROWS;
        tti_gpu_pass<MATH, DIM, ROWS, THREADS>(q, landing, queries, douts, next, all_rows, dim);
        if (threadIdx.x < 2 * ROWS) { lse[threadIdx.x] = landed[threadIdx.x]; }
        if (next < all_rows) {
            tti_gpu_send_statistics<ROWS>(landed, a, seq, delta_all, kv_head, next, all_rows);
        }
        __syncthreads();
        if (next <= one_seen_by) { continue; }
        tti_gpu_scores<MATH, DIM, ROWS>(p, k + TTI_WARP_ROW * WORDS, q, steps);
        TTI_EACH_RESULT(ROWS / 8, j, r) {
            int seen = row0 + TTI_COLUMN(j, r) >= seen_by[r / 2];
            p[j][r] = seen ? tti_gpu_exp<MATH>(a.scale * p[j][r] - lse[TTI_COLUMN(j, r)]) : 0.0f;
        }
        if (PARTS & TTI_DV) { tti_gpu_attend<MATH, DIM, ROWS>(dv, p, dout); }
        if (PARTS & TTI_DK) {
            tti_gpu_scores<MATH, DIM, ROWS>(ds, v + TTI_WARP_ROW * WORDS, dout, steps);
            TTI_EACH_RESULT(ROWS / 8, j, r) { ds[j][r] = p[j][r] * (ds[j][r] - delta[TTI_COLUMN(j, r)]); }
            tti_gpu_attend<MATH, DIM, ROWS>(dk, ds, q);
        }
    }
    const tti_heads to = tti_gpu_heads(a, (int)blockIdx.x);      /* as above, not kept */
    const int n_to = min(KEYS, to.tokens - (int)blockIdx.y * KEYS);
    const float one[2] = {1.0f, 1.0f}, scale[2] = {a.scale, a.scale};
    if (PARTS & TTI_DV && a.dv) {
        tti_gpu_put_results<MATH, DIM>(tti_gpu_keys(a, to, a.dv, (int)blockIdx.z), (int)blockIdx.y * KEYS,
                                       n_to, a.head_dim, adds_dv, dv, one);
    }
    if (PARTS & TTI_DK && a.dk) {
        tti_gpu_put_results<MATH, DIM>(tti_gpu_keys(a, to, a.dk, (int)blockIdx.z), (int)blockIdx.y * KEYS,
                                       n_to, a.head_dim, adds_dk, dk, scale);
    }
}

/* ---- [tt:cuda.decode] attention of one query for each sequence ----
 * All heads of a group against the cache in chunks of TTI_ROWS keys, which TTI_SPLITS blocks share (block z
 * takes chunks z, z + TTI_SPLITS, ...), so that a long cache keeps the device busy. Each leaves max, sum
 * and unscaled out of its keys; they are put together in order. The grid depends on the number of sequences
 * only. */
#define TTI_ROWS 64
#define TTI_SPLITS 8

/* Shared memory, all float, in this order.
 *     tile              [TTI_ROWS][dim + 1]    a chunk of keys, then of its values
 *     q, out            [group][dim] each      q scaled
 *     p                 [group][TTI_ROWS]      scores, then exp(score - max)
 *     max, sum, shrink  [group] each           as in the forward kernel */
static size_t tti_cuda_decode_bytes(int group, int dim) {
    size_t heads = (size_t)group, channels = (size_t)dim;
    return sizeof(float) * (TTI_ROWS * (channels + 1) + 2 * heads * channels + heads * (TTI_ROWS + 3));
}

/* The online softmax of a chunk: a warp for each head, two keys a lane. */
static __device__ void tti_gpu_softmax_chunk(float *p, float *max, float *sum, float *shrink, int group) {
    const int tid = (int)threadIdx.x, threads = (int)blockDim.x;
    for (int h = tid / 32; h < group; h += threads / 32) {
        float *s = p + h * TTI_ROWS + tid % 32, first = s[0], second = s[32];
        float top = fmaxf(first, second), total;
        for (int step = 16; step > 0; step /= 2) {
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, step));
        }
        top = fmaxf(top, max[h]);
        __syncwarp();                       /* all have read max[h], which the first lane will write */
        s[0] = first = expf(first - top);
        s[32] = second = expf(second - top);
        total = first + second;
        for (int step = 16; step > 0; step /= 2) { total += __shfl_xor_sync(0xFFFFFFFFu, total, step); }
        if (tid % 32 == 0) {
            shrink[h] = expf(max[h] - top);
            sum[h] = sum[h] * shrink[h] + total;
            max[h] = top;
        }
    }
}

/* partial: [tokens][n_heads][TTI_SPLITS][dim + 2], out with its max and sum behind it. */
static __global__ void __launch_bounds__(256) tti_gpu_attention_decode(tt_attention_args a, float *partial) {
    TTI_DYNAMIC_SHARED(shared);
    const tti_heads seq = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.y, dim = a.head_dim, group = seq.group, n_keys = seq.position + 1;
    const int tid = (int)threadIdx.x, threads = (int)blockDim.x;
    float *tile = (float *)shared;
    float *q = tile + TTI_ROWS * (dim + 1), *out = q + group * dim;
    float *p = out + group * dim;
    float *max = p + group * TTI_ROWS, *sum = max + group, *shrink = sum + group;
    const tti_lines keys = tti_gpu_keys(a, seq, a.k, kv_head), values = tti_gpu_keys(a, seq, a.v, kv_head);
    const float *query = tti_gpu_rows(a, seq, a.q, kv_head).p;
    size_t row;
    for (int i = tid; i < group * dim; i += threads) {
        q[i] = a.scale * query[i];
        out[i] = 0.0f;
    }
    for (int i = tid; i < group; i += threads) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (int key0 = (int)blockIdx.z * TTI_ROWS; key0 < n_keys; key0 += TTI_SPLITS * TTI_ROWS) {
        const int n = min(TTI_ROWS, n_keys - key0);
        for (int i = tid; i < n * dim; i += threads) {
            tile[i / dim * (dim + 1) + i % dim] = tti_gpu_line(keys, key0 + i / dim)[i % dim];
        }
        __syncthreads();
        for (int i = tid; i < group * TTI_ROWS; i += threads) {
            int key = i % TTI_ROWS;
            p[i] = key < n ? tti_gpu_dot(q + i / TTI_ROWS * dim, tile + key * (dim + 1), dim) : -INFINITY;
        }
        __syncthreads();
        tti_gpu_softmax_chunk(p, max, sum, shrink, group);
        for (int i = tid; i < n * dim; i += threads) {
            tile[i / dim * (dim + 1) + i % dim] = tti_gpu_line(values, key0 + i / dim)[i % dim];
        }
        __syncthreads();
        for (int i = tid; i < group * dim; i += threads) {
            const float *weights = p + i / dim * TTI_ROWS;
            float total = out[i] * shrink[i / dim];
            for (int key = 0; key < n; key++) {
                total = fmaf(weights[key], tile[key * (dim + 1) + i % dim], total);
            }
            out[i] = total;
        }
        __syncthreads();
    }
    row = (size_t)seq.first * (size_t)a.n_heads + (size_t)(kv_head * group);
    partial += (row * TTI_SPLITS + blockIdx.z) * (size_t)(dim + 2);
    __syncthreads();
    for (int i = tid; i < group * (dim + 2); i += threads) {
        int h = i / (dim + 2), d = i % (dim + 2);
        float value = d == dim ? max[h] : d > dim ? sum[h] : out[h * dim + d];
        partial[(size_t)h * TTI_SPLITS * (size_t)(dim + 2) + (size_t)d] = value;
    }
}

/* A thread for each value of out puts the parts together. */
static __global__ void tti_gpu_attention_decode_end(tt_attention_args a, const float *partial) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_heads * (size_t)a.head_dim) {
        size_t dim = (size_t)a.head_dim, row = i / dim, width = dim + 2;
        const float *part = partial + row * TTI_SPLITS * width;
        float max = part[dim], sum = 0.0f, out = 0.0f;
        for (int s = 1; s < TTI_SPLITS; s++) { max = fmaxf(max, part[(size_t)s * width + dim]); }
        for (int s = 0; s < TTI_SPLITS; s++) {
            float weight = expf(part[(size_t)s * width + dim] - max);
            sum = fmaf(part[(size_t)s * width + dim + 1], weight, sum);
            out = fmaf(part[(size_t)s * width + i % dim], weight, out);
        }
        a.out[i] = out / sum;
        if (a.lse && i % dim == 0) { a.lse[row] = max + logf(sum); }
    }
}

/* The kernels in tiles for a head_dim and math, with what one block of each owns; NULL where none fits the
 * device. dk is dv where one kernel makes both. */
typedef struct tti_attention_kernels {
    void (*forward)(tt_attention_args);
    void (*dq)(tt_attention_args, const float *, int);
    void (*dv)(tt_attention_args, const float *, int, int);
    void (*dk)(tt_attention_args, const float *, int, int);
    size_t forward_bytes, dq_bytes, dkv_bytes;      /* of shared memory */
    int forward_rows, dq_rows, dkv_keys;
    unsigned threads;                               /* for each row */
} tti_attention_kernels;

/* As many rows a block, 16 a warp, and as long a tile as leave room for two blocks of 8 warps on a
 * multiprocessor with 228 KB of shared memory, or for one block of less with 99 KB. dk and dv of 256 channels
 * do not fit the registers together, nor do those of floats beside the halves of their factors. Floats of
 * head_dim above 128 go back row by row where a block has only 99 KB, as on compute capability 8.6 and 8.9:
 * even 32 rows are too many. */
template <int MATH, int DIM>
static tti_attention_kernels tti_cuda_attention_kernels_of(size_t shared_limit) {
    enum {
        WORDS = tti_tile_of<MATH, DIM>::words,
        FORWARD = DIM == 256 ? (MATH == TT_CUDA_BF16 ? 64 : 32) : MATH == TT_CUDA_F32 ? 64 : 128,
        KEYS = WORDS > 64 || MATH == TT_CUDA_F32 ? 16 : 2048 / WORDS,
        OWN = DIM == 256 ? 32 : WORDS > 64 || MATH == TT_CUDA_F32 ? 64 : 128,
        OWN_KEYS = DIM == 128 || (DIM == 64 && MATH != TT_CUDA_BF16) ? 64 : OWN,
        BACK = 16,
        APART = DIM == 256 || MATH == TT_CUDA_F32,
        DV = APART ? TTI_DV : TTI_DK | TTI_DV,
        DK = APART ? TTI_DK : DV
    };
    tti_attention_kernels k = TT_INIT;
    k.forward_bytes = tti_cuda_tile_bytes<MATH, DIM>(1, FORWARD, KEYS);
    k.dq_bytes = tti_cuda_tile_bytes<MATH, DIM>(2, OWN, BACK);
    k.dkv_bytes = tti_cuda_tile_bytes<MATH, DIM>(2, OWN_KEYS, BACK) + 4 * BACK * sizeof(float);
    k.forward_rows = FORWARD;
    k.dq_rows = OWN;
    k.dkv_keys = OWN_KEYS;
    k.threads = 2 * tti_tile_of<MATH, DIM>::split;
    if (k.forward_bytes <= shared_limit) {
        k.forward = tti_gpu_attention_forward_tiles<MATH, DIM, FORWARD, KEYS>;
    }
    if (k.dq_bytes <= shared_limit && k.dkv_bytes <= shared_limit) {
        k.dq = tti_gpu_attention_dq_tiles<MATH, DIM, OWN, BACK>;
        k.dv = tti_gpu_attention_dkv_tiles<MATH, DIM, OWN_KEYS, BACK, DV>;
        k.dk = tti_gpu_attention_dkv_tiles<MATH, DIM, OWN_KEYS, BACK, DK>;
    }
    return k;
}

template <int MATH>
static tti_attention_kernels tti_cuda_attention_kernels_at(size_t shared_limit, int dim) {
    if (dim <= 64) { return tti_cuda_attention_kernels_of<MATH, 64>(shared_limit); }
    if (dim <= 128) { return tti_cuda_attention_kernels_of<MATH, 128>(shared_limit); }
    return tti_cuda_attention_kernels_of<MATH, 256>(shared_limit);
}

static tti_attention_kernels tti_cuda_attention_kernels_for(size_t shared_limit, tt_cuda_math math, int dim) {
    switch (math) {
    case TT_CUDA_BF16: return tti_cuda_attention_kernels_at<TT_CUDA_BF16>(shared_limit, dim);
    case TT_CUDA_TF32: return tti_cuda_attention_kernels_at<TT_CUDA_TF32>(shared_limit, dim);
    default: return tti_cuda_attention_kernels_at<TT_CUDA_F32>(shared_limit, dim);
    }
}

static tti_attention_kernels tti_cuda_attention_kernels(const tti_cuda *cuda, int dim) {
    tti_attention_kernels none = TT_INIT;
    if (cuda->kernels == TT_CUDA_NAIVE || dim > 256) { return none; }
    return tti_cuda_attention_kernels_for(cuda->shared_limit, cuda->math, dim);
}

/* More shared memory than 48 KB has to be asked for. */
template <class... P>
static tt_status tti_cuda_allow_shared(tt_context *ctx, void (*kernel)(P...), size_t bytes) {
    if (!kernel) { return TT_OK; }
    return tti_cuda_check(
        ctx, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "shared memory");
}

/* Asks for all of it once: it is a property of the kernel, not of the context, so every context asks for the
 * same. */
static tt_status tti_cuda_open_kernels(tt_context *ctx, const tti_cuda *cuda) {
    static const int dims[3] = {64, 128, 256};
    tt_status status = tti_cuda_allow_shared(ctx, tti_gpu_attention_decode, cuda->shared_limit);
    int i;
    for (i = 0; i < 9 && status == TT_OK; i++) {
        tti_attention_kernels k =
            tti_cuda_attention_kernels_for(cuda->shared_limit, (tt_cuda_math)(i / 3), dims[i % 3]);
        status = tti_cuda_allow_shared(ctx, k.forward, k.forward_bytes);
        if (status == TT_OK) { status = tti_cuda_allow_shared(ctx, k.dq, k.dq_bytes); }
        if (status == TT_OK) { status = tti_cuda_allow_shared(ctx, k.dv, k.dkv_bytes); }
        if (status == TT_OK) { status = tti_cuda_allow_shared(ctx, k.dk, k.dkv_bytes); }
    }
    return status;
}

static tt_status tti_cuda_attention_check(tt_context *ctx, const tt_attention_args *a) {
    int divides = a->n_kv_heads >= 1 && a->n_heads % a->n_kv_heads == 0;
    if (divides && a->head_dim >= 1 && a->n_kv_heads <= TTI_CUDA_GRID_LIMIT) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG,
                   "attention: n_heads %d, n_kv_heads %d, head_dim %d, expected a multiple and >= 1",
                   a->n_heads, a->n_kv_heads, a->head_dim);
}

/* Most tokens in a sequence. */
static int tti_cuda_longest(const tt_attention_args *a) {
    int s, longest = 0;
    for (s = 0; s < a->n_sequences; s++) {
        int tokens = a->host_offsets[s + 1] - a->host_offsets[s];
        if (tokens > longest) { longest = tokens; }
    }
    return longest;
}

/* Blocks of `each` rows in the longest sequence: a row is a token of one head of a group. */
static size_t tti_cuda_row_blocks(const tt_attention_args *a, int each) {
    size_t rows = (size_t)tti_cuda_longest(a) * (size_t)(a->n_heads / a->n_kv_heads);
    return (rows + (size_t)each - 1) / (size_t)each;
}

static tt_status tti_cuda_attention_decode(tt_context *ctx, const tt_attention_args *a, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t rows = (size_t)a->n_tokens * (size_t)a->n_heads, dim = (size_t)a->head_dim;
    dim3 grid((unsigned)a->n_sequences, (unsigned)a->n_kv_heads, TTI_SPLITS);
    unsigned end_grid = tti_cuda_grid(cuda, rows * dim);
    float *partial =
        (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, rows * TTI_SPLITS * (dim + 2) * sizeof(float));
    if (!partial) { return TT_ERR_MEM; }
    cuda->counts.attention_decode++;
    TTI_LAUNCH(cuda, tti_gpu_attention_decode, grid, TTI_CUDA_THREADS, bytes, *a, partial);
    TTI_LAUNCH(cuda, tti_gpu_attention_decode_end, end_grid, TTI_CUDA_THREADS, 0, *a, partial);
    return tti_cuda_launched(ctx, "attention_decode");
}

static tt_status tti_cuda_attention_forward(tt_context *ctx, const tt_attention_args *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tti_attention_kernels k;
    int longest, single;
    size_t blocks, decode_bytes;
    if (tti_cuda_attention_check(ctx, a) != TT_OK) { return TT_ERR_ARG; }
    longest = tti_cuda_longest(a);
    if (longest == 0) { return TT_OK; }
    single = a->query_start && longest == 1 && a->n_tokens == a->n_sequences;
    decode_bytes = tti_cuda_decode_bytes(a->n_heads / a->n_kv_heads, a->head_dim);
    if (cuda->kernels == TT_CUDA_FAST && single && decode_bytes <= cuda->shared_limit) {
        return tti_cuda_attention_decode(ctx, a, decode_bytes);
    }
    k = tti_cuda_attention_kernels(cuda, a->head_dim);
    blocks = k.forward ? tti_cuda_row_blocks(a, k.forward_rows) : 0;
    if (k.forward && blocks <= TTI_CUDA_GRID_LIMIT) {
        dim3 grid((unsigned)a->n_sequences, (unsigned)blocks, (unsigned)a->n_kv_heads);
        cuda->counts.attention_tiles++;
        TTI_LAUNCH(cuda, k.forward, grid, k.threads * (unsigned)k.forward_rows, k.forward_bytes, *a);
    } else {
        cuda->counts.attention_naive++;
        unsigned grid = tti_cuda_grid(cuda, (size_t)a->n_tokens * (size_t)a->n_heads);
        TTI_LAUNCH(cuda, tti_gpu_attention_forward, grid, TTI_CUDA_THREADS, 0, *a);
    }
    return tti_cuda_launched(ctx, "attention_forward");
}

/* adds: to dq, dk, dv; else they are written. */
static tt_status tti_cuda_attention_backward_tiles(tt_context *ctx, const tt_attention_args *a,
                                                   const tti_attention_kernels *k, const float *delta,
                                                   const int adds[3]) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    const unsigned keys_each = (unsigned)k->dkv_keys, key_threads = k->threads * keys_each;
    const unsigned row_threads = k->threads * (unsigned)k->dq_rows;
    unsigned key_blocks = ((unsigned)tti_cuda_longest(a) + keys_each - 1) / keys_each;
    unsigned row_blocks = (unsigned)tti_cuda_row_blocks(a, k->dq_rows);
    dim3 rows((unsigned)a->n_sequences, row_blocks, (unsigned)a->n_kv_heads);
    dim3 keys((unsigned)a->n_sequences, key_blocks, (unsigned)a->n_kv_heads);
    int dv = a->dv || (a->dk && k->dk == k->dv), dk = a->dk && k->dk != k->dv;
    cuda->counts.attention_tiles++;
    if (a->dq) { TTI_LAUNCH(cuda, k->dq, rows, row_threads, k->dq_bytes, *a, delta, adds[0]); }
    if (dv) { TTI_LAUNCH(cuda, k->dv, keys, key_threads, k->dkv_bytes, *a, delta, adds[1], adds[2]); }
    if (dk) { TTI_LAUNCH(cuda, k->dk, keys, key_threads, k->dkv_bytes, *a, delta, adds[1], adds[2]); }
    return tti_cuda_launched(ctx, "attention_backward");
}

static tt_status tti_cuda_attention_backward(tt_context *ctx, const tt_attention_args *a) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);      /* zeros wait: the tiles write */
    size_t rows = (size_t)a->n_tokens * (size_t)a->n_heads, dim = (size_t)a->head_dim;
    size_t keys = (size_t)a->n_tokens * (size_t)a->n_kv_heads;
    int adds[3], tiles;
    tti_attention_kernels k;
    float *delta;
    if (tti_cuda_attention_check(ctx, a) != TT_OK) { return TT_ERR_ARG; }
    if (a->query_start || a->key_start || !a->lse) {
        return tt_fail(ctx, TT_ERR_ARG, "attention_backward: expected packed sequences and lse: trees of sequences "
                       "(tt_batch_desc.parents, share_prompts) are trained on the CPU alone");
    }
    if (rows == 0) { return TT_OK; }
    k = tti_cuda_attention_kernels(cuda, a->head_dim);
    tiles = k.dq && tti_cuda_row_blocks(a, k.dq_rows) <= TTI_CUDA_GRID_LIMIT;
    adds[0] = !tiles || !tti_cuda_fresh(ctx, a->dq, rows * dim);
    adds[1] = !tiles || !tti_cuda_fresh(ctx, a->dk, keys * dim);
    adds[2] = !tiles || !tti_cuda_fresh(ctx, a->dv, keys * dim);
    delta = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, rows * sizeof(float));
    if (!delta) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_attention_delta, (unsigned)((rows + 7) / 8), TTI_CUDA_THREADS, 0, delta, a->dout,
               a->out, rows, a->head_dim);
    if (tiles) { return tti_cuda_attention_backward_tiles(ctx, a, &k, delta, adds); }
    cuda->counts.attention_naive++;
    if (a->dq) {
        TTI_LAUNCH(cuda, tti_gpu_attention_dq, tti_cuda_grid(cuda, rows), TTI_CUDA_THREADS, 0, *a, delta);
    }
    if (a->dk || a->dv) {
        TTI_LAUNCH(cuda, tti_gpu_attention_dkv, tti_cuda_grid(cuda, keys), TTI_CUDA_THREADS, 0, *a, delta);
    }
    return tti_cuda_launched(ctx, "attention_backward");
}

/* ---- [tt:cuda.logprobs] log-probs of tokens, without the logits ----
 *     z = x w' / temperature,  logprob = z[target] - log sum exp z,  p = softmax(z),  H = -sum p log p
 * Logits exist only as a block of TTI_CUDA_VOCAB_ROWS x TTI_CUDA_VOCAB_BLOCK: gemm makes it, a scan folds
 * it into each row's online softmax. Backward makes the same blocks again and turns them into dz in place.
 * Row blocks go in order, so that dw's chains run over the rows one after the other. */

/* Of the columns seen: largest z, z of the target, and with e = exp(z - max) sum of e and of e (z - max);
 * as in chapter 2. */
typedef struct tti_cuda_softmax {
    float max, target;
    double sum, dot;
} tti_cuda_softmax;

typedef struct tti_cuda_logits {
    float *z;
    uint16_t *rounded;                      /* dz in bf16, packed_step apart, in the place of z; or NULL */
    size_t stride, columns, column, vocab;      /* of z; of this block; its first; of all blocks */
    size_t packed_step;
    int fresh_dx, fresh_dw;
    float inv_temperature;
    const int32_t *targets;
    tti_cuda_softmax *states;
    float *logprobs, *entropy, *lse;
    const float *dlogprobs, *dentropy;
} tti_cuda_logits;

/* p log p of a p that underflows is 0: no log-prob below this, the log of the smallest float, is taken. */
#define TTI_LEAST_LOG -104.0f

/* A block of threads for each row: its part of z joins the row's softmax; the last part gives the results. */
static __global__ void tti_gpu_logits_scan(tti_cuda_logits l) {
    const size_t row = blockIdx.x, target = (size_t)l.targets[row];
    const float *z = l.z + row * l.stride;
    float top = -INFINITY, sum = 0.0f, dot = 0.0f;
    for (size_t i = threadIdx.x; i < l.columns; i += blockDim.x) {
        top = fmaxf(top, z[i] * l.inv_temperature);
    }
    top = tti_gpu_max(top);
    if (l.column > 0) { top = fmaxf(top, l.states[row].max); }
    for (size_t i = threadIdx.x; i < l.columns; i += blockDim.x) {
        float d = z[i] * l.inv_temperature - top, e = expf(d);
        sum += e;
        dot = fmaf(e, fmaxf(TTI_LEAST_LOG, d), dot);
    }
    sum = tti_gpu_sum(sum);
    dot = tti_gpu_sum(dot);
    if (threadIdx.x == 0) {
        tti_cuda_softmax s = {top, 0.0f, 0.0, 0.0};
        if (l.column > 0) {                 /* what came before, relative to the new maximum */
            s = l.states[row];
            double gap = (double)s.max - (double)top, shrink = exp(gap);
            s.dot = (s.dot + s.sum * gap) * shrink;
            s.sum *= shrink;
            s.max = top;
        }
        s.sum += (double)sum;
        s.dot += (double)dot;
        if (target >= l.column && target - l.column < l.columns) {
            s.target = z[target - l.column] * l.inv_temperature;
        }
        l.states[row] = s;
        if (l.column + l.columns == l.vocab) {
            double log_sum = log(s.sum);
            if (l.logprobs) { l.logprobs[row] = (float)((double)s.target - (double)s.max - log_sum); }
            if (l.entropy) { l.entropy[row] = (float)(log_sum - s.dot / s.sum); }
            if (l.lse) { l.lse[row] = (float)((double)s.max + log_sum); }
        }
    }
}

/* dz = inv_temperature (dlogp (1[target] - p) - dH p (log p + H)), over z in place or rounded. */
static __global__ void tti_gpu_logits_back(tti_cuda_logits l, size_t rows) {
    TTI_EACH_VALUE(i, rows * l.columns) {
        size_t row = i / l.columns, column = l.column + i % l.columns;
        float dlogp = l.dlogprobs ? l.dlogprobs[row] : 0.0f;
        float dh = l.dentropy ? l.dentropy[row] : 0.0f, h = l.dentropy ? l.entropy[row] : 0.0f;
        float logp = l.z[i] * l.inv_temperature - l.lse[row];
        float dz = -expf(logp) * fmaf(dh, fmaxf(TTI_LEAST_LOG, logp) + h, dlogp);
        dz = l.inv_temperature * (column == (size_t)l.targets[row] ? dz + dlogp : dz);
        if (l.rounded) {
            l.rounded[row * l.packed_step + i % l.columns] = tti_gpu_bf16(dz);
        } else {
            l.z[i] = dz;
        }
    }
}

/* Row number `row` of a matrix that pack made, or NULL. */
static const void *tti_cuda_packed_row(const void *packed, size_t row, int columns) {
    return packed ? (const uint16_t *)packed + row * tti_cuda_packed_step(columns) : NULL;
}

/* z [rows, columns] = x w' of a block: rows of x from `row` on, rows of w from l's column on. */
static void tti_cuda_logits_gemm(tt_gemm_args *g, const tt_logprobs_args *a, const tti_cuda_logits *l,
                                 size_t row, size_t rows) {
    memset(g, 0, sizeof *g);
    g->m = (int)rows;
    g->n = g->ldc = (int)l->columns;
    g->k = g->lda = g->ldb = a->dim;
    g->transpose_b = 1;
    g->a = a->x + row * (size_t)a->dim;
    g->b = a->w + l->column * (size_t)a->dim;
    g->packed_a = tti_cuda_packed_row(a->packed_x, row, a->dim);
    g->panels = tti_cuda_packed_row(a->packed_w, l->column, a->dim);
    g->c = l->z;
}

static size_t tti_cuda_least(size_t a, size_t b) { return a < b ? a : b; }

/* Scratch memory, and what all blocks share. */
static tt_status tti_cuda_logits_begin(tt_context *ctx, const tt_logprobs_args *a, tti_cuda_logits *l) {
    size_t rows = tti_cuda_least((size_t)a->n, TTI_CUDA_VOCAB_ROWS);
    size_t columns = tti_cuda_least((size_t)a->vocab, TTI_CUDA_VOCAB_BLOCK);
    void *states;
    memset(l, 0, sizeof *l);
    l->vocab = (size_t)a->vocab;
    l->inv_temperature = a->inv_temperature;
    l->z = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_LOGITS, rows * columns * sizeof(float));
    if (!l->z) { return TT_ERR_MEM; }
    states = tti_cuda_scratch(ctx, TTI_SCRATCH_STATES, rows * sizeof(tti_cuda_softmax));
    l->states = (tti_cuda_softmax *)states;
    return l->states ? TT_OK : TT_ERR_MEM;
}

/* The pointers of a block of rows. */
static void tti_cuda_logits_rows(tti_cuda_logits *l, const tt_logprobs_args *a, size_t row) {
    l->targets = a->targets + row;
    l->logprobs = a->logprobs ? a->logprobs + row : NULL;
    l->entropy = a->entropy ? a->entropy + row : NULL;
    l->lse = a->lse ? a->lse + row : NULL;
    l->dlogprobs = a->dlogprobs ? a->dlogprobs + row : NULL;
    l->dentropy = a->dentropy ? a->dentropy + row : NULL;
}

/* The next block of columns, from `column` on. */
static void tti_cuda_logits_columns(tti_cuda_logits *l, size_t column) {
    l->column = column;
    l->columns = l->stride = tti_cuda_least(l->vocab - column, TTI_CUDA_VOCAB_BLOCK);
}

static tt_status tti_cuda_logprobs_forward(tt_context *ctx, const tt_logprobs_args *a) {
    size_t n = (size_t)a->n, vocab = (size_t)a->vocab, row, rows, column;
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_status status = TT_OK;
    tt_gemm_args g;
    tti_cuda_logits l;
    if (n == 0) { return TT_OK; }
    if (tti_cuda_logits_begin(ctx, a, &l) != TT_OK) { return TT_ERR_MEM; }
    for (row = 0; row < n; row += rows) {
        rows = tti_cuda_least(n - row, TTI_CUDA_VOCAB_ROWS);
        tti_cuda_logits_rows(&l, a, row);
        for (column = 0; column < vocab; column += l.columns) {
            tti_cuda_logits_columns(&l, column);
            tti_cuda_logits_gemm(&g, a, &l, row, rows);
            status = tti_cuda_gemm(ctx, &g);
            if (status != TT_OK) { return status; }
            TTI_LAUNCH(cuda, tti_gpu_logits_scan, (unsigned)rows, TTI_CUDA_THREADS, 0, l);
        }
    }
    return tti_cuda_launched(ctx, "logits_scan");
}

/* dz of a block, rounded at once where both its products are, and dx += dz w, dw += dz' x. */
static tt_status tti_cuda_logprobs_back(tt_context *ctx, const tt_logprobs_args *a, tti_cuda_logits *l,
                                        size_t row, size_t rows) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    unsigned grid = tti_cuda_grid(cuda, rows * l->columns);
    tt_gemm_args g;
    tt_status status;
    tti_cuda_logits_gemm(&g, a, l, row, rows);
    status = tti_cuda_gemm(ctx, &g);
    if (status != TT_OK) { return status; }
    if (a->packed_x && a->packed_w) {
        l->packed_step = tti_cuda_packed_step((int)l->columns);
        l->rounded =
            (uint16_t *)tti_cuda_scratch(ctx, TTI_SCRATCH_A, rows * l->packed_step * sizeof(uint16_t));
        if (!l->rounded) { return TT_ERR_MEM; }
    }
    TTI_LAUNCH(cuda, tti_gpu_logits_back, grid, TTI_CUDA_THREADS, 0, *l, rows);
    status = tti_cuda_launched(ctx, "logits_back");
    g.a = l->z;
    g.packed_a = l->rounded;
    g.accumulate = !l->fresh_dx || l->column > 0;
    g.n = g.ldc = g.ldb = a->dim;
    g.lda = (int)l->columns;
    g.transpose_b = 0;
    if (a->dx && status == TT_OK) {
        g.k = (int)l->columns;
        g.c = a->dx + row * (size_t)a->dim;
        status = tti_cuda_gemm(ctx, &g);
    }
    if (a->dw && status == TT_OK) {
        g.accumulate = !l->fresh_dw || row > 0;
        g.transpose_a = 1;
        g.m = (int)l->columns;
        g.k = (int)rows;
        g.b = a->x + row * (size_t)a->dim;
        g.panels = tti_cuda_packed_row(a->packed_x, row, a->dim);
        g.c = a->dw + l->column * (size_t)a->dim;
        status = tti_cuda_gemm(ctx, &g);
    }
    return status;
}

static tt_status tti_cuda_logprobs_backward(tt_context *ctx, const tt_logprobs_args *a) {
    size_t n = (size_t)a->n, vocab = (size_t)a->vocab, row, rows, column;
    int fresh_dx, fresh_dw;
    tt_status status = TT_OK;
    tti_cuda_logits l;
    if (a->dentropy && !a->entropy) {
        return tt_fail(ctx, TT_ERR_ARG, "logprobs_backward: dentropy without entropy");
    }
    if (n == 0) { return TT_OK; }
    fresh_dx = tti_cuda_fresh(ctx, a->dx, n * (size_t)a->dim);
    fresh_dw = tti_cuda_fresh(ctx, a->dw, vocab * (size_t)a->dim);
    if (tti_cuda_logits_begin(ctx, a, &l) != TT_OK) { return TT_ERR_MEM; }
    l.fresh_dx = fresh_dx;
    l.fresh_dw = fresh_dw;
    for (row = 0; row < n && status == TT_OK; row += rows) {
        rows = tti_cuda_least(n - row, TTI_CUDA_VOCAB_ROWS);
        tti_cuda_logits_rows(&l, a, row);
        for (column = 0; column < vocab && status == TT_OK; column += l.columns) {
            tti_cuda_logits_columns(&l, column);
            status = tti_cuda_logprobs_back(ctx, a, &l, row, rows);
        }
    }
    return status;
}

/* ---- [tt:cuda.sample] sampling ----
 * A token of each row: the first whose probabilities, added from column 0 on, pass u times their sum. A
 * block of threads for each row, whose columns are segments, at most one a thread. A warp sums one, its
 * lanes side by side; the first segment that passes is walked once more, 32 columns at a time. */
static __device__ int tti_gpu_min(int value) {
    for (int step = 16; step > 0; step /= 2) {
        value = min(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
    }
    __shared__ int parts[32];
    if (threadIdx.x % 32 == 0) { parts[threadIdx.x / 32] = value; }
    __syncthreads();
    value = parts[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) { value = min(value, parts[i]); }
    __syncthreads();
    return value;
}

/* The value of each lane added to those of the lanes before it. */
static __device__ double tti_gpu_running_sum(double value) {
    for (unsigned step = 1; step < 32; step *= 2) {
        double before = __shfl_up_sync(0xFFFFFFFFu, value, step);
        if (threadIdx.x % 32 >= step) { value += before; }
    }
    return value;
}

/* One warp, over the columns begin .. end-1 of a row: the first at which mass passes want, else the last
 * that has any probability. */
static __device__ int tti_gpu_sample_segment(const float *z, int begin, int end, float top,
                                             float inv_temperature, double mass, double want) {
    const int lane = (int)(threadIdx.x % 32);
    int last = begin;
    for (int first = begin; first < end; first += 32) {
        const int i = first + lane;
        double weight = i < end ? (double)expf((z[i] - top) * inv_temperature) : 0.0;
        double sum = tti_gpu_running_sum(weight);
        unsigned some = __ballot_sync(0xFFFFFFFFu, weight > 0);
        unsigned hits = __ballot_sync(0xFFFFFFFFu, weight > 0 && mass + sum > want);
        if (hits) { return first + __ffs((int)hits) - 1; }
        if (some) { last = first + 31 - __clz((int)some); }
        mass += __shfl_sync(0xFFFFFFFFu, sum, 31);
    }
    return last;
}

static __global__ void __launch_bounds__(256) tti_gpu_sample(tt_sample_args a) {
    __shared__ double sums[TTI_CUDA_THREADS];
    const float *z = a.logits + (size_t)blockIdx.x * (size_t)a.vocab;
    const int each = (a.vocab + TTI_CUDA_THREADS * 32 - 1) / (TTI_CUDA_THREADS * 32) * 32;
    const int segments = (a.vocab + each - 1) / each;
    const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    float top = -INFINITY;
    double mass = 0, want = 0;
    int token = a.vocab, chosen = 0, s;
    for (int i = (int)threadIdx.x; i < a.vocab; i += TTI_CUDA_THREADS) { top = fmaxf(top, z[i]); }
    top = tti_gpu_max(top);
    if (a.greedy) {
        for (int i = (int)threadIdx.x; i < a.vocab && token == a.vocab; i += TTI_CUDA_THREADS) {
            if (z[i] == top) { token = i; }
        }
        token = tti_gpu_min(token);
        if (threadIdx.x == 0) { a.tokens[blockIdx.x] = token < a.vocab ? token : 0; }
        return;
    }
    for (s = warp; s < segments; s += TTI_CUDA_THREADS / 32) {
        double sum = 0;
        for (int i = s * each + lane; i < min(a.vocab, (s + 1) * each); i += 32) {
            sum += (double)expf((z[i] - top) * a.inv_temperature);
        }
        for (int step = 16; step > 0; step /= 2) { sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step); }
        if (lane == 0) { sums[s] = sum; }
    }
    __syncthreads();
    if (warp > 0) { return; }
    for (s = 0; s < segments; s++) { want += sums[s]; }
    want *= a.u[blockIdx.x];
    for (s = 0; s < segments; s++) {            /* where rounding lets none pass, the last that has any */
        if (sums[s] > 0) { chosen = s; }
        if (mass + sums[s] > want) { break; }
        mass += sums[s];
    }
    for (s = 0, mass = 0; s < chosen; s++) { mass += sums[s]; }
    token = tti_gpu_sample_segment(z, chosen * each, min(a.vocab, (chosen + 1) * each), top,
                                   a.inv_temperature, mass, want);
    if (lane == 0) { a.tokens[blockIdx.x] = token; }
}

/* The log-probs come from the scan of logprobs_forward, in its blocks: the bits are those of training. */
static tt_status tti_cuda_sample(tt_context *ctx, const tt_sample_args *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t vocab = (size_t)a->vocab, bytes = (size_t)a->n * sizeof(tti_cuda_softmax);
    tti_cuda_logits l = TT_INIT;
    if (a->n <= 0) { return TT_OK; }
    l.states = (tti_cuda_softmax *)tti_cuda_scratch(ctx, TTI_SCRATCH_STATES, bytes);
    if (!l.states) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_sample, (unsigned)a->n, TTI_CUDA_THREADS, 0, *a);
    l.stride = l.vocab = vocab;
    l.inv_temperature = a->inv_temperature;
    l.targets = a->tokens;
    l.logprobs = a->logprobs;
    for (l.column = 0; l.column < vocab; l.column += l.columns) {
        l.columns = tti_cuda_least(vocab - l.column, TTI_CUDA_VOCAB_BLOCK);
        l.z = (float *)(uintptr_t)a->logits + l.column;
        TTI_LAUNCH(cuda, tti_gpu_logits_scan, (unsigned)a->n, TTI_CUDA_THREADS, 0, l);
    }
    return tti_cuda_launched(ctx, "sample");
}

/* ---- [tt:cuda.rows] rows and columns ----
 * x, y [n, dim]: gather y[i] = x[rows[i]], scatter y[rows[i]] = x[i], add dx[rows[i]] += dy[i]. */
static __global__ void tti_gpu_gather_rows(float *y, const float *x, const int32_t *rows, size_t n,
                                           size_t dim) {
    TTI_EACH_VALUE(i, n * dim) { y[i] = x[(size_t)rows[i / dim] * dim + i % dim]; }
}

static __global__ void tti_gpu_scatter_rows(float *y, const float *x, const int32_t *rows, size_t n,
                                            size_t dim) {
    TTI_EACH_VALUE(i, n * dim) { y[(size_t)rows[i / dim] * dim + i % dim] = x[i]; }
}

/* next[i]: the next j > i with the same row, or n; later[j] = 1 if j is the next of some i. A warp for each
 * i. */
static __global__ void tti_gpu_chain_rows(int32_t *next, int32_t *later, const int32_t *rows, int n) {
    int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
    int found = n;
    for (int j0 = i + 1; j0 < n && found == n; j0 += 32) {
        unsigned hits = __ballot_sync(0xFFFFFFFFu, j0 + lane < n && rows[j0 + lane] == rows[i]);
        if (hits) { found = j0 + __ffs((int)hits) - 1; }
    }
    if (i < n && lane == 0) {
        next[i] = found;
        if (found < n) { later[found] = 1; }
    }
}

/* The first of each row's occurrences adds them all, in order: no two threads write to one place. */
static __global__ void tti_gpu_add_rows(float *dx, const float *dy, const int32_t *rows, const int32_t *next,
                                        const int32_t *later, int n, size_t dim) {
    int i = (int)blockIdx.x;
    size_t d = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (later[i] || d >= dim) { return; }
    float *to = dx + (size_t)rows[i] * dim + d, sum = *to;
    for (; i < n; i = next[i]) { sum += dy[(size_t)i * dim + d]; }
    *to = sum;
}

static tt_status tti_cuda_gather_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n,
                                      int dim) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_gather_rows, (size_t)n * (size_t)dim, y, x, rows, (size_t)n, (size_t)dim);
}

static tt_status tti_cuda_scatter_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n,
                                       int dim) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_scatter_rows, (size_t)n * (size_t)dim, y, x, rows, (size_t)n, (size_t)dim);
}

static tt_status tti_cuda_scatter_add_rows(tt_context *ctx, float *dx, const float *dy, const int32_t *rows,
                                           int n, int dim) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    unsigned chain_grid = ((unsigned)n + 7) / 8;
    dim3 add_grid((unsigned)n, ((unsigned)dim + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS);
    int32_t *next, *later;
    if (n <= 0 || dim <= 0) { return TT_OK; }
    next = (int32_t *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, 2 * (size_t)n * sizeof *next);
    if (!next) { return TT_ERR_MEM; }
    later = next + n;
    if (tti_cuda_zero(ctx, later, (size_t)n * sizeof *later) != TT_OK) { return TT_ERR_DEVICE; }
    TTI_LAUNCH(cuda, tti_gpu_chain_rows, chain_grid, TTI_CUDA_THREADS, 0, next, later, rows, n);
    TTI_LAUNCH(cuda, tti_gpu_add_rows, add_grid, TTI_CUDA_THREADS, 0, dx, dy, rows, next, later, n,
               (size_t)dim);
    return tti_cuda_launched(ctx, "add_rows");
}

/* y [n, count] = columns begin .. begin + count of x [n, cols]; back adds dy into those of dx. */
static __global__ void tti_gpu_slice(float *y, const float *x, size_t n, size_t cols, size_t begin,
                                     size_t count) {
    TTI_EACH_VALUE(i, n * count) { y[i] = x[i / count * cols + begin + i % count]; }
}

static __global__ void tti_gpu_slice_back(float *dx, const float *dy, size_t n, size_t cols, size_t begin,
                                          size_t count) {
    TTI_EACH_VALUE(i, n * count) { dx[i / count * cols + begin + i % count] += dy[i]; }
}

static tt_status tti_cuda_slice(tt_context *ctx, float *y, const float *x, int n, int cols, int begin,
                                int count) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_slice, (size_t)n * (size_t)count, y, x, (size_t)n, (size_t)cols,
                      (size_t)begin, (size_t)count);
}

static tt_status tti_cuda_slice_backward(tt_context *ctx, float *dx, const float *dy, int n, int cols,
                                         int begin, int count) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_slice_back, (size_t)n * (size_t)count, dx, dy, (size_t)n, (size_t)cols,
                      (size_t)begin, (size_t)count);
}

/* ---- [tt:cuda.norm] norms of rows ----
 *     RMSNorm    y = x r w,  r = 1 / sqrt(mean(x^2) + eps)          Zhang and Sennrich 2019, arXiv 1910.07467
 *     LayerNorm  y = (x - mean) r w + b,  r = 1 / sqrt(var + eps)   Ba et al. 2016, arXiv 1607.06450
 * x, y, dx, dy [n, dim]; w, b, dw, db [dim]; mean, rstd [n]. A block of threads for each row. Sums over
 * rows are made in two rounds: each chunk of TTI_CHUNK_ROWS rows by itself, then the chunks in order. */
typedef struct tti_cuda_norm {
    size_t n, dim;
    float eps;
    const float *x, *w, *b, *dy;
    float *y, *mean, *rstd, *dx, *dw, *db;      /* mean: NULL for RMSNorm */
    int fresh_dx, fresh_dw, fresh_db;
} tti_cuda_norm;

#define TTI_EACH_COLUMN(i, dim) for (size_t i = threadIdx.x; i < (dim); i += blockDim.x)

static __global__ void tti_gpu_norm(tti_cuda_norm a) {
    for (size_t row = blockIdx.x; row < a.n; row += gridDim.x) {
        const float *x = a.x + row * a.dim;
        float *y = a.y + row * a.dim, mean = 0.0f, square = 0.0f, r;
        if (a.mean) {
            TTI_EACH_COLUMN(i, a.dim) { mean += x[i]; }
            mean = tti_gpu_sum(mean) / (float)a.dim;
        }
        TTI_EACH_COLUMN(i, a.dim) { square = fmaf(x[i] - mean, x[i] - mean, square); }
        r = 1.0f / sqrtf(tti_gpu_sum(square) / (float)a.dim + a.eps);
        TTI_EACH_COLUMN(i, a.dim) { y[i] = (x[i] - mean) * r * a.w[i] + (a.b ? a.b[i] : 0.0f); }
        if (threadIdx.x == 0) {
            a.rstd[row] = r;
            if (a.mean) { a.mean[row] = mean; }
        }
    }
}

/* With n = (x - mean) r and g = dy w:  dx += r (g - mean(g) - n mean(g n)), mean(g) only for LayerNorm. */
static __global__ void tti_gpu_norm_dx(tti_cuda_norm a) {
    for (size_t row = blockIdx.x; row < a.n; row += gridDim.x) {
        const float *x = a.x + row * a.dim, *dy = a.dy + row * a.dim;
        float *dx = a.dx + row * a.dim, mean = a.mean ? a.mean[row] : 0.0f, r = a.rstd[row];
        float sum = 0.0f, dot = 0.0f;
        TTI_EACH_COLUMN(i, a.dim) {
            float g = dy[i] * a.w[i];
            sum += g;
            dot = fmaf(g, (x[i] - mean) * r, dot);
        }
        sum = a.mean ? tti_gpu_sum(sum) / (float)a.dim : 0.0f;
        dot = tti_gpu_sum(dot) / (float)a.dim;
        TTI_EACH_COLUMN(i, a.dim) {
            float g = dy[i] * a.w[i] - sum - (x[i] - mean) * r * dot;
            dx[i] = fmaf(r, g, tti_gpu_before(dx + i, a.fresh_dx));
        }
    }
}

/* dw = sum over rows of dy n,  db = of dy: a block makes 32 columns of one chunk of rows. parts:
 * [2][chunks][dim], of dw, then of db. x NULL: db only. */
#define TTI_CHUNK_ROWS 256

static __global__ void tti_gpu_norm_dw(tti_cuda_norm a, float *parts) {
    __shared__ float dw_parts[8][32], db_parts[8][32];
    const size_t column = (size_t)blockIdx.x * 32 + threadIdx.x, chunk = blockIdx.y;
    const size_t end = min(a.n, (chunk + 1) * TTI_CHUNK_ROWS);
    float dw = 0.0f, db = 0.0f;
    for (size_t row = chunk * TTI_CHUNK_ROWS + threadIdx.y; row < end && column < a.dim; row += 8) {
        float dy = a.dy[row * a.dim + column];
        if (a.x) {
            float mean = a.mean ? a.mean[row] : 0.0f;
            dw = fmaf(dy, (a.x[row * a.dim + column] - mean) * a.rstd[row], dw);
        }
        db += dy;
    }
    dw_parts[threadIdx.y][threadIdx.x] = dw;
    db_parts[threadIdx.y][threadIdx.x] = db;
    __syncthreads();
    if (threadIdx.y != 0 || column >= a.dim) { return; }
    for (int i = 1; i < 8; i++) {
        dw += dw_parts[i][threadIdx.x];
        db += db_parts[i][threadIdx.x];
    }
    parts[chunk * a.dim + column] = dw;
    parts[(gridDim.y + chunk) * a.dim + column] = db;
}

static __global__ void tti_gpu_add_chunks(float *to, const float *parts, size_t chunks, size_t dim,
                                          int fresh) {
    TTI_EACH_VALUE(i, dim) {
        float sum = 0.0f;
        for (size_t chunk = 0; chunk < chunks; chunk++) { sum += parts[chunk * dim + i]; }
        to[i] = tti_gpu_before(to + i, fresh) + sum;
    }
}

/* A short row is one warp's work. */
static unsigned tti_cuda_row_threads(size_t dim) { return dim <= 256 ? 32 : TTI_CUDA_THREADS; }

static unsigned tti_cuda_row_grid(size_t n) { return (unsigned)tti_cuda_least(n, (size_t)1 << 30); }

static tt_status tti_cuda_norm_forward(tt_context *ctx, const tti_cuda_norm *a) {
    if (a->n == 0) { return TT_OK; }
    TTI_LAUNCH(tti_cuda_of(ctx), tti_gpu_norm, tti_cuda_row_grid(a->n), tti_cuda_row_threads(a->dim), 0, *a);
    return tti_cuda_launched(ctx, "norm");
}

static tt_status tti_cuda_norm_dw(tt_context *ctx, const tti_cuda_norm *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t chunks = (a->n + TTI_CHUNK_ROWS - 1) / TTI_CHUNK_ROWS;
    unsigned grid = tti_cuda_grid(cuda, a->dim);
    dim3 parts_grid((unsigned)((a->dim + 31) / 32), (unsigned)chunks), threads(32, 8);
    float *parts = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, 2 * chunks * a->dim * sizeof(float));
    if (!parts) { return TT_ERR_MEM; }
    if (chunks > TTI_CUDA_GRID_LIMIT) {
        return tt_fail(ctx, TT_ERR_ARG, "cuda: %lu rows, expected at most %lu", (unsigned long)a->n,
                       (unsigned long)TTI_CUDA_GRID_LIMIT * TTI_CHUNK_ROWS);
    }
    TTI_LAUNCH(cuda, tti_gpu_norm_dw, parts_grid, threads, 0, *a, parts);
    if (a->dw) {
        TTI_LAUNCH(cuda, tti_gpu_add_chunks, grid, TTI_CUDA_THREADS, 0, a->dw, parts, chunks, a->dim,
                   a->fresh_dw);
    }
    parts += chunks * a->dim;
    if (a->db) {
        TTI_LAUNCH(cuda, tti_gpu_add_chunks, grid, TTI_CUDA_THREADS, 0, a->db, parts, chunks, a->dim,
                   a->fresh_db);
    }
    return tti_cuda_launched(ctx, "norm_dw");
}

static tt_status tti_cuda_norm_backward(tt_context *ctx, tti_cuda_norm *a) {
    unsigned grid = tti_cuda_row_grid(a->n), threads = tti_cuda_row_threads(a->dim);
    if (a->n == 0) { return TT_OK; }
    a->fresh_dx = tti_cuda_fresh(ctx, a->dx, a->n * a->dim);
    a->fresh_dw = tti_cuda_fresh(ctx, a->dw, a->dim);
    a->fresh_db = tti_cuda_fresh(ctx, a->db, a->dim);
    if (a->dx) { TTI_LAUNCH(tti_cuda_of(ctx), tti_gpu_norm_dx, grid, threads, 0, *a); }
    if (a->dw || a->db) { return tti_cuda_norm_dw(ctx, a); }
    return tti_cuda_launched(ctx, "norm_dx");
}

static tti_cuda_norm tti_cuda_norm_of(int n, int dim) {
    tti_cuda_norm a = TT_INIT;
    a.n = (size_t)n;
    a.dim = (size_t)dim;
    return a;
}

static tt_status tti_cuda_layernorm(tt_context *ctx, float *y, float *mean, float *rstd, const float *x,
                                    const float *w, const float *b, int n, int dim, float eps) {
    tti_cuda_norm a = tti_cuda_norm_of(n, dim);
    a.eps = eps;
    a.x = x;
    a.w = w;
    a.b = b;
    a.y = y;
    a.mean = mean;
    a.rstd = rstd;
    return tti_cuda_norm_forward(ctx, &a);
}

static tt_status tti_cuda_rmsnorm(tt_context *ctx, float *y, float *rstd, const float *x, const float *w,
                                  int n, int dim, float eps) {
    return tti_cuda_layernorm(ctx, y, NULL, rstd, x, w, NULL, n, dim, eps);
}

static tt_status tti_cuda_layernorm_backward(tt_context *ctx, float *dx, float *dw, float *db,
                                             const float *dy, const float *x, const float *w,
                                             const float *mean, const float *rstd, int n, int dim) {
    tti_cuda_norm a = tti_cuda_norm_of(n, dim);
    a.x = x;
    a.w = w;
    a.dy = dy;
    a.mean = (float *)(uintptr_t)mean;      /* only read here */
    a.rstd = (float *)(uintptr_t)rstd;
    a.dx = dx;
    a.dw = dw;
    a.db = db;
    return tti_cuda_norm_backward(ctx, &a);
}

static tt_status tti_cuda_rmsnorm_backward(tt_context *ctx, float *dx, float *dw, const float *dy,
                                           const float *x, const float *w, const float *rstd, int n,
                                           int dim) {
    return tti_cuda_layernorm_backward(ctx, dx, dw, NULL, dy, x, w, NULL, rstd, n, dim);
}

static tt_status tti_cuda_bias_backward(tt_context *ctx, float *db, const float *dy, int n, int dim) {
    tti_cuda_norm a = tti_cuda_norm_of(n, dim);
    a.dy = dy;
    a.db = db;
    return tti_cuda_norm_backward(ctx, &a);
}

/* ---- [tt:cuda.rope] rotary embedding ----
 *     y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin
 * where x1, x2 are the halves of a head, as in Llama; the inverse turns by -angle and adds to y. x, y
 * [n, heads, 2 half]; the tables [positions, half]. Source: Su et al. 2021, arXiv 2104.09864. */
static __global__ void tti_gpu_rope(float *y, const float *x, const float *cos_table, const float *sin_table,
                                    const int32_t *positions, size_t n, size_t heads, size_t half,
                                    int inverse, int fresh) {
    TTI_EACH_VALUE(i, n * heads * half) {
        size_t d = i % half, at = i / half * 2 * half + d;
        size_t angle = (size_t)positions[i / half / heads] * half + d;
        float x1 = x[at], x2 = x[at + half];
        float cosine = cos_table[angle], sine = inverse ? -sin_table[angle] : sin_table[angle];
        float y1 = x1 * cosine - x2 * sine, y2 = x2 * cosine + x1 * sine;
        y[at] = inverse ? tti_gpu_before(y + at, fresh) + y1 : y1;
        y[at + half] = inverse ? tti_gpu_before(y + at + half, fresh) + y2 : y2;
    }
}

static tt_status tti_cuda_rope(tt_context *ctx, float *y, const float *x, const float *cos_table,
                               const float *sin_table, const int32_t *positions, int n, int heads,
                               int head_dim, int inverse) {
    const size_t half = (size_t)(head_dim / 2), pairs = (size_t)n * (size_t)heads * half;
    const int fresh = tti_cuda_fresh(ctx, y, 2 * pairs);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_rope, pairs, y, x, cos_table, sin_table, positions, (size_t)n,
                      (size_t)heads, half, inverse, fresh);
}

/* ---- [tt:cuda.elementwise] elementwise ---- */
static __global__ void tti_gpu_unary(int op, float *y, const float *x_all, size_t n, float p0, float p1) {
    TTI_EACH_VALUE(i, n) { y[i] = tti_gpu_value(op, x_all[i], p0, p1); }
}

/* dx += dy op'(x); y = op(x). */
static __global__ void tti_gpu_unary_back(int op, float *dx_all, const float *dy_all, const float *x_all,
                                          const float *y_all, size_t n, float p0, float p1, int fresh) {
    TTI_EACH_VALUE(i, n) {
        float dy = dy_all[i], x = x_all[i], y = y_all[i], dx, s;
        switch (op) {
        case TT_NEG: dx = -dy; break;
        case TT_EXP: dx = dy * y; break;
        case TT_LOG: dx = dy / x; break;
        case TT_TANH: dx = dy * (1.0f - y * y); break;
        case TT_CLAMP: dx = x < p0 || p1 < x ? 0.0f : dy; break;
        case TT_SCALE: dx = dy * p0; break;
        case TT_GELU_TANH:                  /* s + x s (1 - s) 2u' */
            s = tti_gpu_gelu_sigmoid(x);
            dx = dy * (s + x * s * (1.0f - s) * 1.59576912f * fmaf(0.134145f * x, x, 1.0f));
            break;
        default:                            /* TT_GELU_ERF: Phi(x) + x phi(x) */
            dx = dy * (tti_gpu_normal_cdf(x) + x * 0.398942280f * expf(-0.5f * x * x));
            break;
        }
        dx_all[i] = tti_gpu_before(dx_all + i, fresh) + dx;
    }
}

static __global__ void tti_gpu_binary(int op, float *y, const float *a_all, const float *b_all, size_t n) {
    TTI_EACH_VALUE(i, n) {
        float a = a_all[i], b = b_all[i];
        switch (op) {
        case TT_ADD: y[i] = a + b; break;
        case TT_SUB: y[i] = a - b; break;
        case TT_MUL: y[i] = a * b; break;
        case TT_DIV: y[i] = a / b; break;
        case TT_MINIMUM: y[i] = b < a ? b : a; break;
        case TT_MAXIMUM: y[i] = a < b ? b : a; break;
        case TT_LESS: y[i] = a < b ? 1.0f : 0.0f; break;
        default: y[i] = a * tti_gpu_sigmoid(a) * b; break;      /* TT_SWIGLU */
        }
    }
}

/* da and db may be NULL. Of two equal values the minimum and maximum are a. */
static __global__ void tti_gpu_binary_back(int op, float *da_all, float *db_all, const float *dy_all,
                                           const float *a_all, const float *b_all, size_t n, int fresh_a,
                                           int fresh_b) {
    TTI_EACH_VALUE(i, n) {
        float a = a_all[i], b = b_all[i], dy = dy_all[i], da = 0.0f, db = 0.0f, s;
        switch (op) {
        case TT_ADD:
            da = dy;
            db = dy;
            break;
        case TT_SUB:
            da = dy;
            db = -dy;
            break;
        case TT_MUL:
            da = dy * b;
            db = dy * a;
            break;
        case TT_DIV:
            da = dy / b;
            db = -dy * (a / b) / b;
            break;
        case TT_MINIMUM:
            da = b < a ? 0.0f : dy;
            db = b < a ? dy : 0.0f;
            break;
        case TT_MAXIMUM:
            da = a < b ? 0.0f : dy;
            db = a < b ? dy : 0.0f;
            break;
        case TT_LESS: break;                /* a step: flat on both sides */
        default:                            /* TT_SWIGLU */
            s = tti_gpu_sigmoid(a);
            da = dy * b * s * fmaf(a, 1.0f - s, 1.0f);
            db = dy * a * s;
            break;
        }
        if (da_all) { da_all[i] = tti_gpu_before(da_all + i, fresh_a) + da; }
        if (db_all) { db_all[i] = tti_gpu_before(db_all + i, fresh_b) + db; }
    }
}

static __global__ void tti_gpu_where(float *y, const float *condition, const float *a, const float *b,
                                     size_t n) {
    TTI_EACH_VALUE(i, n) { y[i] = condition[i] != 0.0f ? a[i] : b[i]; }
}

static __global__ void tti_gpu_where_back(float *da, float *db, const float *dy, const float *condition,
                                          size_t n) {
    TTI_EACH_VALUE(i, n) {
        float *to = condition[i] != 0.0f ? da : db;
        if (to) { to[i] += dy[i]; }
    }
}

static __global__ void tti_gpu_axpy(float *y, const float *x, float alpha, size_t n, int fresh) {
    TTI_EACH_VALUE(i, n) { y[i] = fmaf(alpha, x[i], tti_gpu_before(y + i, fresh)); }
}

/* AdamW. Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2. */
static __global__ void tti_gpu_adamw(tt_adamw_args a) {
    TTI_EACH_VALUE(i, a.n) {
        float p = a.p[i], g = a.g[i] * a.grad_scale;
        float m = fmaf(a.beta1, a.m[i], (1.0f - a.beta1) * g);
        float v = fmaf(a.beta2, a.v[i], (1.0f - a.beta2) * g * g);
        float step = m / a.correction1 / (sqrtf(v / a.correction2) + a.eps);
        a.m[i] = m;
        a.v[i] = v;
        a.p[i] = p - a.lr * (step + a.weight_decay * p);
    }
}

static tt_status tti_cuda_unary(tt_context *ctx, tt_unary op, float *y, const float *x, size_t n, float p0,
                                float p1) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_unary, n, (int)op, y, x, n, p0, p1);
}

static tt_status tti_cuda_unary_backward(tt_context *ctx, tt_unary op, float *dx, const float *dy,
                                         const float *x, const float *y, size_t n, float p0, float p1) {
    const int fresh = tti_cuda_fresh(ctx, dx, n);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_unary_back, n, (int)op, dx, dy, x, y, n, p0, p1, fresh);
}

static tt_status tti_cuda_binary(tt_context *ctx, tt_binary op, float *y, const float *a, const float *b,
                                 size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_binary, n, (int)op, y, a, b, n);
}

static tt_status tti_cuda_binary_backward(tt_context *ctx, tt_binary op, float *da, float *db,
                                          const float *dy, const float *a, const float *b, size_t n) {
    const int fresh_a = tti_cuda_fresh(ctx, da, n), fresh_b = tti_cuda_fresh(ctx, db, n);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_binary_back, n, (int)op, da, db, dy, a, b, n, fresh_a, fresh_b);
}

static tt_status tti_cuda_where(tt_context *ctx, float *y, const float *condition, const float *a,
                                const float *b, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_where, n, y, condition, a, b, n);
}

static tt_status tti_cuda_where_backward(tt_context *ctx, float *da, float *db, const float *dy,
                                         const float *condition, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_where_back, n, da, db, dy, condition, n);
}

static tt_status tti_cuda_axpy(tt_context *ctx, float *y, const float *x, float alpha, size_t n) {
    const int fresh = y != x && tti_cuda_fresh(ctx, y, n);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_axpy, n, y, x, alpha, n, fresh);
}

static tt_status tti_cuda_adamw(tt_context *ctx, const tt_adamw_args *args) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_adamw, args->n, *args);
}

/* ---- [tt:cuda.shape] broadcast, reduce, sums ----
 * small[4] broadcasts to big[4], whose entries are equal or 1 in small. steps: of small along each axis of
 * big, 0 where it broadcasts; n: values of big. */
typedef struct tti_cuda_shapes {
    size_t big[4], steps[4], n;
} tti_cuda_shapes;

static tti_cuda_shapes tti_cuda_shapes_of(const int *small_shape, const int *big_shape) {
    tti_cuda_shapes s;
    size_t step = 1;
    int i;
    s.n = 1;
    for (i = 3; i >= 0; i--) {
        s.big[i] = (size_t)big_shape[i];
        s.steps[i] = small_shape[i] == 1 ? 0 : step;
        step *= (size_t)small_shape[i];
        s.n *= s.big[i];
    }
    return s;
}

static __global__ void tti_gpu_broadcast(float *y, const float *x, tti_cuda_shapes s, int accumulate) {
    TTI_EACH_VALUE(i, s.n) {
        size_t from = 0, rest = i;
        for (int axis = 3; axis >= 0; axis--) {
            from += rest % s.big[axis] * s.steps[axis];
            rest /= s.big[axis];
        }
        y[i] = accumulate ? y[i] + x[from] : x[from];
    }
}

/* Sums in double. A group of `threads` (1 or a block) makes one element of y: it walks, in order, over the
 * axes that small has not. */
static __global__ void tti_gpu_reduce(float *y, const float *x, tti_cuda_shapes s, size_t outputs,
                                      size_t terms, int threads, int accumulate) {
    size_t output = threads == 1 ? (size_t)blockIdx.x * blockDim.x + threadIdx.x : blockIdx.x;
    size_t first = 0, rest = output, step = 1;
    double sum = 0;
    for (int axis = 3; axis >= 0; axis--) {
        if (s.steps[axis]) {
            first += rest % s.big[axis] * step;
            rest /= s.big[axis];
        }
        step *= s.big[axis];
    }
    size_t begin = threads == 1 ? 0 : threadIdx.x;
    for (size_t term = begin; term < terms && output < outputs; term += (size_t)threads) {
        size_t at = first;
        rest = term;
        step = 1;
        for (int axis = 3; axis >= 0; axis--) {
            if (!s.steps[axis]) {
                at += rest % s.big[axis] * step;
                rest /= s.big[axis];
            }
            step *= s.big[axis];
        }
        sum += (double)x[at];
    }
    if (threads > 1) { sum = tti_gpu_sum(sum); }
    if (output < outputs && (threads == 1 || threadIdx.x == 0)) {
        y[output] = (float)(accumulate ? (double)y[output] + sum : sum);
    }
}

static tt_status tti_cuda_broadcast(tt_context *ctx, float *y, const float *x, const int *small_shape,
                                    const int *big_shape, int accumulate) {
    tti_cuda_shapes s = tti_cuda_shapes_of(small_shape, big_shape);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_broadcast, s.n, y, x, s, accumulate);
}

static tt_status tti_cuda_reduce(tt_context *ctx, float *y, const float *x, const int *small_shape,
                                 const int *big_shape, int accumulate) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tti_cuda_shapes s = tti_cuda_shapes_of(small_shape, big_shape);
    size_t outputs = 1, terms, grid;
    const size_t most = (size_t)1 << 31;    /* blocks along x of a grid */
    int threads, i;
    for (i = 0; i < 4; i++) { outputs *= (size_t)small_shape[i]; }
    if (outputs == 0) { return TT_OK; }
    terms = s.n / outputs;
    threads = terms <= 32 ? 1 : TTI_CUDA_THREADS;
    grid = threads == 1 ? (outputs + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS : outputs;
    if (grid >= most) {
        return tt_fail(ctx, TT_ERR_ARG, "reduce: %lu sums, expected below %lu", (unsigned long)outputs,
                       (unsigned long)most);
    }
    TTI_LAUNCH(cuda, tti_gpu_reduce, (unsigned)grid, TTI_CUDA_THREADS, 0, y, x, s, outputs, terms, threads,
               accumulate);
    return tti_cuda_launched(ctx, "reduce");
}

/* Sum of squares in two rounds: a block sums TTI_CHUNK_VALUES values, one block sums the blocks. */
#define TTI_CHUNK_VALUES ((size_t)1 << 15)

static __global__ void tti_gpu_sum_squares(double *parts, const float *x, size_t n) {
    size_t begin = blockIdx.x * TTI_CHUNK_VALUES, end = min(n, (blockIdx.x + (size_t)1) * TTI_CHUNK_VALUES);
    double sum = 0;
    for (size_t i = begin + threadIdx.x; i < end; i += blockDim.x) { sum += (double)x[i] * (double)x[i]; }
    sum = tti_gpu_sum(sum);
    if (threadIdx.x == 0) { parts[blockIdx.x] = sum; }
}

static __global__ void tti_gpu_add_doubles(double *out, const double *parts, size_t n) {
    double sum = 0;
    TTI_EACH_COLUMN(i, n) { sum += parts[i]; }
    sum = tti_gpu_sum(sum);
    if (threadIdx.x == 0) { *out = sum; }
}

static tt_status tti_cuda_sum_squares(tt_context *ctx, const float *x, size_t n, double *out) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t chunks = (n + TTI_CHUNK_VALUES - 1) / TTI_CHUNK_VALUES;
    double *parts;
    if (n == 0) { return tti_cuda_zero(ctx, out, sizeof *out); }
    parts = (double *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, chunks * sizeof *parts);
    if (!parts) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_sum_squares, (unsigned)chunks, TTI_CUDA_THREADS, 0, parts, x, n);
    TTI_LAUNCH(cuda, tti_gpu_add_doubles, 1, TTI_CUDA_THREADS, 0, out, parts, chunks);
    return tti_cuda_launched(ctx, "sum_squares");
}

/* ---- [tt:cuda.cast] casts: to the nearest, ties to even ----
 * bf16: sign, 8 bits of exponent, 7 of mantissa. f16: sign, 5, 10. */
static __device__ uint16_t tti_gpu_to_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    int is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    if (is_nan) { return (uint16_t)((bits >> 16) | 0x40u); }      /* stays one */
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static __device__ uint16_t tti_gpu_to_f16(float x) {
    uint32_t bits = __float_as_uint(x), sign = (bits >> 16) & 0x8000u, half;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) { return (uint16_t)(sign | 0x7E00u); }      /* NaN */
    if (bits >= 0x477FF000u) { return (uint16_t)(sign | 0x7C00u); }     /* rounds beyond 65504: infinity */
    if (bits < 0x38800000u) {               /* below 2^-14, denormal: beside 0.5 the sum rounds at 2^-24 */
        half = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3F000000u;
    } else {
        half = (bits - 0x38000000u + 0xFFFu + ((bits >> 13) & 1u)) >> 13;
    }
    return (uint16_t)(sign | half);
}

static __device__ float tti_gpu_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7FFFu;
    if (rest >= 0x7C00u) { return __uint_as_float(sign | 0x7F800000u | (rest & 0x3FFu) << 13); }
    if (rest >= 0x400u) { return __uint_as_float(sign | ((rest << 13) + 0x38000000u)); }
    return __uint_as_float(sign | __float_as_uint((float)rest * (1.0f / 16777216.0f)));
}

static __global__ void tti_gpu_narrow(uint16_t *to, const float *from, size_t n, int bf16) {
    TTI_EACH_VALUE(i, n) { to[i] = bf16 ? tti_gpu_to_bf16(from[i]) : tti_gpu_to_f16(from[i]); }
}

static __global__ void tti_gpu_widen(float *to, const uint16_t *from, size_t n, int bf16) {
    TTI_EACH_VALUE(i, n) {
        to[i] = bf16 ? __uint_as_float((uint32_t)from[i] << 16) : tti_gpu_from_f16(from[i]);
    }
}

static tt_status tti_cuda_cast(tt_context *ctx, void *to, tt_dtype to_type, const void *from,
                               tt_dtype from_type, size_t n) {
    int to_half = to_type == TT_BF16 || to_type == TT_F16;
    int from_half = from_type == TT_BF16 || from_type == TT_F16;
    if (to_type == from_type) { return tti_cuda_copy(ctx, to, from, n * (to_half ? 2 : 4)); }
    if (from_type == TT_F32 && to_half) {
        TTI_LAUNCH_VALUES(ctx, tti_gpu_narrow, n, (uint16_t *)to, (const float *)from, n, to_type == TT_BF16);
    }
    if (to_type == TT_F32 && from_half) {
        TTI_LAUNCH_VALUES(ctx, tti_gpu_widen, n, (float *)to, (const uint16_t *)from, n,
                          from_type == TT_BF16);
    }
    return tt_fail(ctx, TT_ERR_ARG, "cast: from type %d to type %d, expected float to or from bf16 or f16",
                   (int)from_type, (int)to_type);
}

/* ---- [tt:cuda.random] what a model begins with ----
 * tt_random and tt_rng_normal of chapter 1, a value a thread: the host would need minutes for a large
 * model. Its logarithm and cosine may differ in the last bit of a double from the device's, which few
 * floats show. */
static __device__ uint64_t tti_gpu_random(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return ((uint64_t)c1 << 32) | c0;
}

static __device__ double tti_gpu_unit(uint64_t bits) {
    return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

static __global__ void tti_gpu_normal(float *x, size_t n, uint64_t seed, uint64_t stream, double std) {
    TTI_EACH_VALUE(i, n) {
        double u = 1.0 - tti_gpu_unit(tti_gpu_random(seed, stream, 2 * i));
        double angle = 6.283185307179586 * tti_gpu_unit(tti_gpu_random(seed, stream, 2 * i + 1));
        x[i] = (float)(std * (sqrt(-2.0 * log(u)) * cos(angle)));
    }
}

static tt_status tti_cuda_normal(tt_context *ctx, float *x, size_t n, uint64_t seed, uint64_t stream,
                                 double std) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_normal, n, x, n, seed, stream, std);
}

/* ---- [tt:cuda.table] the table ----
 * One for each device; they differ only in the number that config points to. The last one stands for a
 * device that cannot be: it opens with an error. Entries that are not named are 0: no half weights,
 * and plain rows of keys. */
static tt_backend tti_cuda_table(int *device) {
    tt_backend b = TT_INIT;
    b.name = "cuda";
    b.config = device;
    b.open = tti_cuda_open;
    b.close = tti_cuda_close;
    b.alloc = tti_cuda_alloc;
    b.free = tti_cuda_free;
    b.upload = tti_cuda_upload;
    b.download = tti_cuda_download;
    b.copy = tti_cuda_copy;
    b.zero = tti_cuda_zero_later;
    b.sync = tti_cuda_sync;
    b.gemm = tti_cuda_gemm;
#ifndef TT_CUDA_NO_CUBLAS
    b.pack = tti_cuda_pack;
#endif
    b.attention_forward = tti_cuda_attention_forward;
    b.attention_backward = tti_cuda_attention_backward;
    b.logprobs_forward = tti_cuda_logprobs_forward;
    b.logprobs_backward = tti_cuda_logprobs_backward;
    b.gather_rows = tti_cuda_gather_rows;
    b.scatter_add_rows = tti_cuda_scatter_add_rows;
    b.scatter_rows = tti_cuda_scatter_rows;
    b.slice = tti_cuda_slice;
    b.slice_backward = tti_cuda_slice_backward;
    b.rmsnorm = tti_cuda_rmsnorm;
    b.rmsnorm_backward = tti_cuda_rmsnorm_backward;
    b.layernorm = tti_cuda_layernorm;
    b.layernorm_backward = tti_cuda_layernorm_backward;
    b.rope = tti_cuda_rope;
    b.unary = tti_cuda_unary;
    b.unary_backward = tti_cuda_unary_backward;
    b.binary = tti_cuda_binary;
    b.binary_backward = tti_cuda_binary_backward;
    b.where = tti_cuda_where;
    b.where_backward = tti_cuda_where_backward;
    b.broadcast = tti_cuda_broadcast;
    b.reduce = tti_cuda_reduce;
    b.bias_backward = tti_cuda_bias_backward;
    b.axpy = tti_cuda_axpy;
    b.sum_squares = tti_cuda_sum_squares;
    b.adamw = tti_cuda_adamw;
    b.cast = tti_cuda_cast;
    b.normal = tti_cuda_normal;
    b.sample = tti_cuda_sample;
    b.step_begin = tti_cuda_step_begin;
    b.step_end = tti_cuda_step_end;
    return b;
}

typedef struct tti_cuda_tables {
    int numbers[TTI_CUDA_DEVICES + 1];
    tt_backend of[TTI_CUDA_DEVICES + 1];
    tti_cuda_tables() {
        for (int i = 0; i <= TTI_CUDA_DEVICES; i++) {
            numbers[i] = i < TTI_CUDA_DEVICES ? i : -1;
            of[i] = tti_cuda_table(&numbers[i]);
        }
    }
} tti_cuda_tables;

/* C++ fills a static inside a function once, also where several threads come at once. */
extern "C" const tt_backend *tt_cuda_backend(int device) {
    static tti_cuda_tables tables;
    return &tables.of[device >= 0 && device < TTI_CUDA_DEVICES ? device : TTI_CUDA_DEVICES];
}

extern "C" tt_status tt_cuda_set(tt_context *ctx, tt_cuda_math math, tt_cuda_kernels kernels) {
    const char *name = tt_backend_get(ctx)->name;
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    if (!cuda || strcmp(name, "cuda") != 0) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_cuda_set: the context's backend is %s, expected an open cuda",
                       name);
    }
    if (math < TT_CUDA_F32 || math > TT_CUDA_BF16 || kernels < TT_CUDA_FAST || kernels > TT_CUDA_NAIVE) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_cuda_set: math is %d and kernels %d, expected 0..2 each",
                       (int)math, (int)kernels);
    }
    cuda->math = math;
    cuda->kernels = kernels;
    return TT_OK;
}

extern "C" tt_memory tt_cuda_memory_get(const tt_context *ctx) {
    const tti_cuda *cuda = (const tti_cuda *)tt_backend_state(ctx);
    tt_memory none = TT_INIT;
    return cuda && strcmp(tt_backend_get(ctx)->name, "cuda") == 0 ? cuda->memory : none;
}

extern "C" tt_cuda_counts tt_cuda_counts_get(const tt_context *ctx) {
    const tti_cuda *cuda = (const tti_cuda *)tt_backend_state(ctx);
    tt_cuda_counts none = TT_INIT;
    return cuda && strcmp(tt_backend_get(ctx)->name, "cuda") == 0 ? cuda->counts : none;
}

/* ---- [tt:cuda.nccl] several GPUs ----
 * tt_reducer's hook over NCCL. In order, as over MPI: each rank is sent its slice of everyone's data, sums
 * it as a binary tree of ranks, and hands it to the others; that moves 2 (ranks - 1) / ranks of the data
 * per rank. */
#ifdef TT_CUDA_NCCL
#ifndef TTI_CUDA_HOST
#include <nccl.h>
#define TTI_NCCL_PIECE ((size_t)1 << 24)    /* floats on their way at once */
#endif
struct tt_nccl {
    tt_context *ctx;
    ncclComm_t comm;
    int rank, size, ordered;
    float *slices;                          /* ordered: TTI_NCCL_PIECE floats on the device */
};

static tt_status tti_nccl_check(tt_context *ctx, ncclResult_t result, const char *what) {
    if (result == ncclSuccess) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_DEVICE, "nccl: %s: %s", what, ncclGetErrorString(result));
}

extern "C" tt_status tt_nccl_id(tt_context *ctx, char id[TT_NCCL_ID_BYTES]) {
    ncclUniqueId unique;
    tt_status status = tti_nccl_check(ctx, ncclGetUniqueId(&unique), "id");
    static_assert(sizeof unique == TT_NCCL_ID_BYTES, "NCCL's id has another size");
    if (status == TT_OK) { memcpy(id, &unique, sizeof unique); }
    return status;
}

extern "C" void tt_nccl_destroy(tt_nccl *c) {
    if (!c) { return; }
    if (c->slices) { tti_cuda_free(c->ctx, c->slices, TTI_NCCL_PIECE * sizeof *c->slices); }
    if (c->comm) {
        tti_cuda_sync(c->ctx);
        ncclCommDestroy(c->comm);
    }
    tt_free(c->ctx, c, 1, sizeof *c);
}

static tt_status tti_nccl_open(tt_nccl *c, const char id[TT_NCCL_ID_BYTES]) {
    ncclUniqueId unique;
    memcpy(&unique, id, sizeof unique);
    tti_cuda_of(c->ctx);                    /* makes the device current: there the communicator will live */
    if (c->ordered) {
        c->slices = (float *)tti_cuda_alloc(c->ctx, TTI_NCCL_PIECE * sizeof *c->slices);
        if (!c->slices) { return TT_ERR_MEM; }
    }
    return tti_nccl_check(c->ctx, ncclCommInitRank(&c->comm, c->size, unique, c->rank), "communicator");
}

extern "C" tt_nccl *tt_nccl_create(tt_context *ctx, const char id[TT_NCCL_ID_BYTES], int rank, int world_size,
                                   int ordered) {
    tt_nccl *c;
    if (strcmp(tt_backend_get(ctx)->name, "cuda") != 0 || !tt_backend_state(ctx)) {
        tt_fail(ctx, TT_ERR_ARG, "tt_nccl_create: the context's backend is %s, expected an open cuda",
                tt_backend_get(ctx)->name);
        return NULL;
    }
    if (world_size < 1 || rank < 0 || rank >= world_size || (size_t)world_size > TTI_NCCL_PIECE) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_nccl_create: rank is %d of world_size %d, expected 0 <= rank < world_size", rank,
                world_size);
        return NULL;
    }
    c = (tt_nccl *)tt_alloc(ctx, 1, sizeof *c);
    if (!c) { return NULL; }
    c->ctx = ctx;
    c->rank = rank;
    c->size = world_size;
    c->ordered = ordered;
    if (tti_nccl_open(c, id) != TT_OK) {
        tt_nccl_destroy(c);
        return NULL;
    }
    return c;
}

/* slices[begin] += slices[begin + 1 .. begin + count), each of n values. */
static tt_status tti_nccl_sum(tt_nccl *c, int begin, int count, size_t n) {
    int half = count % 2 ? count - 1 : count / 2;
    float *to = c->slices + (size_t)begin * n;
    tt_status status;
    if (count == 1) { return TT_OK; }
    status = tti_nccl_sum(c, begin, half, n);
    if (status == TT_OK) { status = tti_nccl_sum(c, begin + half, count - half, n); }
    if (status == TT_OK) { status = tti_cuda_axpy(c->ctx, to, to + (size_t)half * n, 1, n); }
    return status;
}

/* size slices of n values: mine of each rank to me, the sum of them to everyone. */
static tt_status tti_nccl_slices(tt_nccl *c, float *data, size_t n, cudaStream_t stream) {
    ncclResult_t result = ncclGroupStart();
    tt_status status;
    int r;
    for (r = 0; r < c->size && result == ncclSuccess; r++) {
        result = ncclSend(data + (size_t)r * n, n, ncclFloat, r, c->comm, stream);
        if (result == ncclSuccess) {
            result = ncclRecv(c->slices + (size_t)r * n, n, ncclFloat, r, c->comm, stream);
        }
    }
    status = tti_nccl_check(c->ctx, result, "exchange");
    result = ncclGroupEnd();                /* also after an error: a group must not stay open */
    if (status == TT_OK) { status = tti_nccl_check(c->ctx, result, "exchange"); }
    if (status == TT_OK) { status = tti_nccl_sum(c, 0, c->size, n); }
    if (status != TT_OK) { return status; }
    result = ncclAllGather(c->slices, data, n, ncclFloat, c->comm, stream);
    return tti_nccl_check(c->ctx, result, "gather");
}

/* The last values, fewer than ranks: each rank sums them all. */
static tt_status tti_nccl_rest(tt_nccl *c, float *data, size_t n, cudaStream_t stream) {
    ncclResult_t result = ncclAllGather(data, c->slices, n, ncclFloat, c->comm, stream);
    tt_status status = tti_nccl_check(c->ctx, result, "gather");
    if (status == TT_OK) { status = tti_nccl_sum(c, 0, c->size, n); }
    if (status == TT_OK) { status = tti_cuda_copy(c->ctx, data, c->slices, n * sizeof *data); }
    return status;
}

extern "C" tt_status tt_nccl_allreduce(void *nccl, float *data, size_t n) {
    tt_nccl *c = (tt_nccl *)nccl;
    cudaStream_t stream = tti_cuda_of(c->ctx)->stream;
    size_t size = (size_t)c->size, most = TTI_NCCL_PIECE / size, slice;
    tt_status status = TT_OK;
    if (!c->ordered) {
        ncclResult_t result = ncclAllReduce(data, data, n, ncclFloat, ncclSum, c->comm, stream);
        return tti_nccl_check(c->ctx, result, "sum");
    }
    for (; n >= size && status == TT_OK; data += slice * size, n -= slice * size) {
        slice = tti_cuda_least(n / size, most);
        status = tti_nccl_slices(c, data, slice, stream);
    }
    if (status == TT_OK && n > 0) { status = tti_nccl_rest(c, data, n, stream); }
    return status;
}
#endif
