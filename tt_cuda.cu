/* tt_cuda.cu - the CUDA backend of thinktuning.h: training and generation on one NVIDIA GPU, sm_80 or newer
 *
 * ---- use ----
 *     nvcc -O3 -arch=native -c tt_cuda.cu                                    (or make cuda: build/tt_cuda.o)
 *     cc app.c tt_cuda.o -L/usr/local/cuda/lib64 -lcublasLt -lcudart -lstdc++ -lm
 * and one line in the program: desc.backend = tt_cuda_backend(0) before tt_create(&desc). All else stays: weights,
 * activations, moments and KV cache live on the device; ids go up, log-probs, logits rows and metrics come down.
 *
 * ---- what is inside ----
 * The table tt_backend of chapter 2, in its order. tti_cuda_NAME is an entry of the table (host code: checks, scratch
 * memory, launch), tti_gpu_NAME a kernel. Products and attention exist twice: naive, one thread per result, which is
 * the specification; and in tiles on tensor cores. Which one runs is the context's choice (tt_cuda_set), or that of
 * the environment: TT_CUDA_MATH = f32, tf32, bf16 and TT_CUDA_KERNELS = fast, own, naive. Steps of decoding go to the
 * device as CUDA graphs, but with TT_CUDA_GRAPH = 0.
 *     f32    products of floats; our tiles split each factor in two TF32 halves and take three products, which keeps
 *            21 of 24 bits (Ootomo and Yokota 2022, arXiv 2203.03341, without their scaling)
 *     tf32   factors rounded to 10 bits of mantissa      bf16   to 7 bits; sums are always float
 *     fast   products by cuBLASLt, attention by our tiles      own   all by our tiles      naive   all naive
 * TT_CUDA_NO_CUBLAS builds without cuBLASLt: fast is then own. TT_CUDA_NCCL adds the sum over several GPUs (link -lnccl).
 *
 * ---- the rules of chapter 2, here ----
 * Bits    No sum uses atomics; the same call on the same GPU gives the same bits. With own and naive kernels a row does
 *         not depend on the rows beside it, decoding equals a prefill, and the log-probs of sampling are those of
 *         training. With fast kernels these three are only close: cuBLASLt chooses by shape, and decoding (one query per
 *         sequence) has a kernel of its own.
 * Memory  From CUDA's stream-ordered pool, which keeps what is freed. Out of device memory is TT_ERR_MEM with the
 *         sizes, and the context lives on. One stream per context; only download, sync and a full ring of uploads wait. */
#include "thinktuning.h"
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifndef TTI_CUDA_HOST      /* tests/test_cuda_host.cpp runs the kernels on a CPU, and stands in for all of this */
#include <cuda_runtime.h>
#ifndef TT_CUDA_NO_CUBLAS
#include <cublasLt.h>
#endif
#define TTI_LAUNCH(cuda, kernel, grid, threads, shared, ...) kernel<<<grid, threads, shared, (cuda)->stream>>>(__VA_ARGS__)
#define TTI_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define TTI_UNROLL _Pragma("unroll")      /* arrays in registers need it */
#endif

/* ---- the context's state ---- */
#define TTI_CUDA_DEVICES 16
#define TTI_CUDA_THREADS 256                /* of most kernels                                              */
#define TTI_CUDA_PLANS 256
#define TTI_CUDA_GRAPH_TRIES 8              /* graphs that may fail or not fit, less those that do, before a context gives them up */
#ifndef TTI_CUDA_RING                       /* the test has smaller ones */
#define TTI_CUDA_RING ((size_t)1 << 22)     /* pinned bytes through which small uploads pass without a wait */
#define TTI_CUDA_WORKSPACE ((size_t)1 << 25)
#define TTI_CUDA_VOCAB_ROWS ((size_t)2048)  /* log-probs: rows times columns of logits at once */
#define TTI_CUDA_VOCAB_BLOCK ((size_t)16384)
#endif
enum { TTI_SCRATCH_A, TTI_SCRATCH_B, TTI_SCRATCH_LOGITS, TTI_SCRATCH_STATES, TTI_SCRATCH_SUMS, TTI_N_SCRATCHES };

#ifndef TT_CUDA_NO_CUBLAS
typedef struct tti_plan_key { int m, n, k, transposes, lda, ldb, ldc, kind; uint32_t alignments[4]; } tti_plan_key;
typedef struct tti_plan { tti_plan_key key; int known, found; cublasLtMatmulAlgo_t algo; } tti_plan;
#endif
typedef struct tti_cuda {
    int device, n_processors;
    tt_cuda_math math;
    tt_cuda_kernels kernels;
    size_t shared_limit;                    /* bytes of shared memory that a block can ask for */
    cudaStream_t stream;
    cudaMemPool_t pool;
    tt_memory memory;
    void *scratch[TTI_N_SCRATCHES];
    size_t scratch_bytes[TTI_N_SCRATCHES];
    char *ring;
    size_t ring_used;
    int held, lost, graph_tries;            /* see "a step as one" */
    cudaGraphExec_t graph;
#ifndef TT_CUDA_NO_CUBLAS
    cublasLtHandle_t blas;
    void *workspace;
    tti_plan plans[TTI_CUDA_PLANS];         /* chosen algorithms, by shape */
#endif
} tti_cuda;

/* The state, with its device made current for this thread. */
static tti_cuda *tti_cuda_of(tt_context *ctx) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    cudaSetDevice(cuda->device);
    return cuda;
}
/* An error while launches are held costs the step, which is launched once more on its own and reports what is still wrong. */
static tt_status tti_cuda_check(tt_context *ctx, cudaError_t error, const char *what) {
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    if (error == cudaSuccess) { return TT_OK; }
    cudaGetLastError();                     /* clears what can be cleared */
    if (cuda && cuda->held) { cuda->lost = 1; return TT_OK; }
    return tt_fail(ctx, TT_ERR_DEVICE, "cuda: %s: %s", what, cudaGetErrorString(error));
}
static tt_status tti_cuda_launched(tt_context *ctx, const char *kernel) { return tti_cuda_check(ctx, cudaGetLastError(), kernel); }

/* ---- a step as one ----
 * A step of decoding is some twenty kernels a layer, most of them shorter than the time between two launches. So the
 * launches between step_begin and step_end are captured and go to the device as one graph. They are captured anew each
 * step, which costs about what launching them would, so that all arguments are those of this step; the graph that is
 * kept is only updated with them, and made anew where CUDA refuses (another number of kernels, say). Uploads of a held step
 * read the ring when the graph runs, and nothing else is written there before the stream is waited for.
 * What cannot be captured makes a step lost: all that it launches is thrown away, and step_end asks for it once more.
 * Losses, and graphs made anew, which costs more than it saves, use up tries; an update gives one back. */
static int tti_cuda_hold(tti_cuda *cuda) {
    cuda->held = cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
    if (!cuda->held) { cuda->graph_tries--; cudaGetLastError(); }
    return cuda->held;
}
/* Memory is made and freed at once, so the capture ends for that long. */
static int tti_cuda_let_go(tti_cuda *cuda) {
    cudaGraph_t graph = NULL;
    if (!cuda->held) { return 0; }
    cuda->held = 0;
    cuda->lost = 1;
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
    if (cuda->ring_used > TTI_CUDA_RING / 2) {      /* half of it is more than the ids of a step */
        if (cudaStreamSynchronize(cuda->stream) != cudaSuccess) { return 0; }
        cuda->ring_used = 0;
    }
    cuda->lost = 0;
    return tti_cuda_hold(cuda);
}
static int tti_cuda_step_end(tt_context *ctx) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    cudaGraph_t graph = NULL;
    int gain = 0, ok = cudaStreamEndCapture(cuda->stream, &graph) == cudaSuccess && graph && !cuda->lost;
    cuda->held = 0;
    if (ok && cuda->graph) {
        gain = tti_cuda_graph_update(cuda->graph, graph) == cudaSuccess ? 1 : -1;
        if (gain < 0) { cudaGraphExecDestroy(cuda->graph); cuda->graph = NULL; }
    }
    if (ok && !cuda->graph && cudaGraphInstantiateWithFlags(&cuda->graph, graph, 0) != cudaSuccess) { cuda->graph = NULL; }
    ok = ok && cuda->graph && cudaGraphLaunch(cuda->graph, cuda->stream) == cudaSuccess;
    if (graph) { cudaGraphDestroy(graph); }
    cuda->graph_tries += ok ? gain : -1;
    if (cuda->graph_tries > TTI_CUDA_GRAPH_TRIES) { cuda->graph_tries = TTI_CUDA_GRAPH_TRIES; }
    cudaGetLastError();
    return ok;
}
static tt_status tti_cuda_held_fail(tt_context *ctx, const char *what) { return tt_fail(ctx, TT_ERR_DEVICE, "cuda: %s between step_begin and step_end", what); }

/* ---- memory ---- */
static void *tti_cuda_alloc_now(tt_context *ctx, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t wanted = bytes ? bytes : 1, free_bytes = 0, all_bytes = 0;
    void *memory = NULL;
    cudaError_t error = cudaMallocFromPoolAsync(&memory, wanted, cuda->pool, cuda->stream);
    if (error == cudaErrorMemoryAllocation) {      /* the pool may hold memory that is free but in the wrong pieces */
        cudaGetLastError();
        cudaStreamSynchronize(cuda->stream);
        cudaMemPoolTrimTo(cuda->pool, 0);
        error = cudaMallocFromPoolAsync(&memory, wanted, cuda->pool, cuda->stream);
    }
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &all_bytes);
        tt_fail(ctx, TT_ERR_MEM, "out of device memory: %lu bytes wanted, %lu in use, %lu of %lu free on device %d", (unsigned long)bytes,
                (unsigned long)cuda->memory.current_bytes, (unsigned long)free_bytes, (unsigned long)all_bytes, cuda->device);
        return NULL;
    }
    if (tti_cuda_check(ctx, error, "allocation") != TT_OK) { return NULL; }
    cuda->memory.current_bytes += bytes;
    if (cuda->memory.current_bytes > cuda->memory.peak_bytes) { cuda->memory.peak_bytes = cuda->memory.current_bytes; }
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
    cudaFreeAsync(memory, cuda->stream);
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
/* Small uploads (ids, offsets, a scalar) are copied to the ring and do not wait for the device. */
static tt_status tti_cuda_upload(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    if (bytes == 0) { return TT_OK; }
    if (cuda->held && (bytes > TTI_CUDA_RING / 16 || cuda->ring_used + bytes > TTI_CUDA_RING)) { cuda->lost = 1; return TT_OK; }
    if (bytes <= TTI_CUDA_RING / 16) {
        if (cuda->ring_used + bytes > TTI_CUDA_RING) {
            if (tti_cuda_check(ctx, cudaStreamSynchronize(cuda->stream), "upload") != TT_OK) { return TT_ERR_DEVICE; }
            cuda->ring_used = 0;
        }
        memcpy(cuda->ring + cuda->ring_used, from, bytes);
        from = cuda->ring + cuda->ring_used;
        cuda->ring_used += (bytes + 63) / 64 * 64;
        return tti_cuda_check(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cuda->stream), "upload");
    }
    if (tti_cuda_check(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cuda->stream), "upload") != TT_OK) { return TT_ERR_DEVICE; }
    return tti_cuda_check(ctx, cudaStreamSynchronize(cuda->stream), "upload");      /* from may be pinned: then the copy still reads it */
}
static tt_status tti_cuda_download(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    if (bytes == 0) { return TT_OK; }
    if (cuda->held) { return tti_cuda_held_fail(ctx, "download"); }
    if (tti_cuda_check(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cuda->stream), "download") != TT_OK) { return TT_ERR_DEVICE; }
    return tti_cuda_check(ctx, cudaStreamSynchronize(cuda->stream), "download");
}
/* Ranges that overlap go through scratch memory: a copy on the device has no direction. */
static tt_status tti_cuda_copy(tt_context *ctx, void *to, const void *from, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    uintptr_t a = (uintptr_t)to, b = (uintptr_t)from;
    if (bytes == 0 || a == b) { return TT_OK; }
    if ((a < b ? b - a : a - b) < bytes) {
        void *between = tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, bytes);
        if (!between) { return TT_ERR_MEM; }
        if (tti_cuda_check(ctx, cudaMemcpyAsync(between, from, bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy") != TT_OK) { return TT_ERR_DEVICE; }
        from = between;
    }
    return tti_cuda_check(ctx, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy");
}
static tt_status tti_cuda_zero(tt_context *ctx, void *to, size_t bytes) {
    if (bytes == 0) { return TT_OK; }
    return tti_cuda_check(ctx, cudaMemsetAsync(to, 0, bytes, tti_cuda_of(ctx)->stream), "zero");
}
static tt_status tti_cuda_sync(tt_context *ctx) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    return cuda->held ? tti_cuda_held_fail(ctx, "sync") : tti_cuda_check(ctx, cudaStreamSynchronize(cuda->stream), "sync");
}

/* ---- opening ---- */
static void tti_cuda_close(tt_context *ctx, void *state) {
    tti_cuda *cuda = (tti_cuda *)state;
    int i;
    cudaSetDevice(cuda->device);
    if (cuda->stream) { cudaStreamSynchronize(cuda->stream); }
    if (cuda->graph) { cudaGraphExecDestroy(cuda->graph); }
    for (i = 0; i < TTI_N_SCRATCHES; i++) { if (cuda->scratch[i]) { cudaFreeAsync(cuda->scratch[i], cuda->stream); } }
#ifndef TT_CUDA_NO_CUBLAS
    if (cuda->workspace) { cudaFreeAsync(cuda->workspace, cuda->stream); }
    if (cuda->blas) { cublasLtDestroy(cuda->blas); }
#endif
    if (cuda->stream) { cudaStreamSynchronize(cuda->stream); }
    if (cuda->pool) { cudaMemPoolDestroy(cuda->pool); }
    if (cuda->ring) { cudaFreeHost(cuda->ring); }
    if (cuda->stream) { cudaStreamDestroy(cuda->stream); }
    tt_free(ctx, cuda, 1, sizeof *cuda);
}
static tt_status tti_cuda_open_pool(tt_context *ctx, tti_cuda *cuda) {
    cudaMemPoolProps properties;
    uint64_t keep = UINT64_MAX;
    memset(&properties, 0, sizeof properties);
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = cuda->device;
    if (tti_cuda_check(ctx, cudaMemPoolCreate(&cuda->pool, &properties), "memory pool") != TT_OK) { return TT_ERR_DEVICE; }
    return tti_cuda_check(ctx, cudaMemPoolSetAttribute(cuda->pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
}
/* Index of the environment's value in a list of names; 0 if it is not set, -1 with the error set if it is unknown. */
static int tti_cuda_choice(tt_context *ctx, const char *variable, const char *const names[3]) {
    const char *value = getenv(variable);
    int i;
    if (!value || !value[0]) { return 0; }
    for (i = 0; i < 3; i++) { if (strcmp(value, names[i]) == 0) { return i; } }
    tt_fail(ctx, TT_ERR_ARG, "cuda: %s is \"%s\", expected %s, %s or %s", variable, value, names[0], names[1], names[2]);
    return -1;
}
static tt_status tti_cuda_open_device(tt_context *ctx, tti_cuda *cuda) {
    static const char *const maths[3] = {"f32", "tf32", "bf16"}, *const kernels[3] = {"fast", "own", "naive"};
    int count = 0, major = 0, shared = 0, math = tti_cuda_choice(ctx, "TT_CUDA_MATH", maths), set = tti_cuda_choice(ctx, "TT_CUDA_KERNELS", kernels);
    const char *graph = getenv("TT_CUDA_GRAPH");
    cudaError_t error = cudaGetDeviceCount(&count);
    if (math < 0 || set < 0) { return TT_ERR_ARG; }
    if (graph && graph[0] && strcmp(graph, "0") != 0 && strcmp(graph, "1") != 0) { return tt_fail(ctx, TT_ERR_ARG, "cuda: TT_CUDA_GRAPH is \"%s\", expected 0 or 1", graph); }
    cuda->graph_tries = graph && graph[0] == '0' ? 0 : TTI_CUDA_GRAPH_TRIES;
    cuda->math = (tt_cuda_math)math;
    cuda->kernels = (tt_cuda_kernels)set;
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        return tt_fail(ctx, TT_ERR_DEVICE, "cuda: no device: %s", cudaGetErrorString(error));
    }
    if (cuda->device < 0 || cuda->device >= count) { return tt_fail(ctx, TT_ERR_DEVICE, "cuda: device is %d, expected 0..%d", cuda->device, count - 1); }
    if (tti_cuda_check(ctx, cudaSetDevice(cuda->device), "device") != TT_OK) { return TT_ERR_DEVICE; }
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->device);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda->device);
    cudaDeviceGetAttribute(&cuda->n_processors, cudaDevAttrMultiProcessorCount, cuda->device);
    if (major < 8) { return tt_fail(ctx, TT_ERR_DEVICE, "cuda: device %d has compute capability %d.x, expected 8.0 or newer", cuda->device, major); }
    cuda->shared_limit = (size_t)shared;
    if (tti_cuda_check(ctx, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "stream") != TT_OK) { return TT_ERR_DEVICE; }
    if (tti_cuda_check(ctx, cudaMallocHost((void **)&cuda->ring, TTI_CUDA_RING), "pinned memory") != TT_OK) { return TT_ERR_DEVICE; }
    if (tti_cuda_open_pool(ctx, cuda) != TT_OK) { return TT_ERR_DEVICE; }
#ifndef TT_CUDA_NO_CUBLAS
    if (cublasLtCreate(&cuda->blas) != CUBLAS_STATUS_SUCCESS) { return tt_fail(ctx, TT_ERR_DEVICE, "cuda: cuBLASLt does not open"); }
    if (tti_cuda_check(ctx, cudaMallocFromPoolAsync(&cuda->workspace, TTI_CUDA_WORKSPACE, cuda->pool, cuda->stream), "workspace of cuBLASLt") != TT_OK) { return TT_ERR_DEVICE; }
#endif
    return TT_OK;
}
static tt_status tti_cuda_open(tt_context *ctx, const tt_backend *self, void **state) {
    tti_cuda *cuda = (tti_cuda *)tt_alloc(ctx, 1, sizeof *cuda);
    tt_status status;
    if (!cuda) { return TT_ERR_MEM; }
    cuda->device = *(const int *)self->config;
    status = tti_cuda_open_device(ctx, cuda);
    if (status != TT_OK) { tti_cuda_close(ctx, cuda); return status; }
    *state = cuda;
    return TT_OK;
}

/* ---- launching ----
 * Elementwise kernels walk over n values in strides of the whole grid. */
#define TTI_EACH_VALUE(i, n) for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)
static unsigned tti_cuda_grid(const tti_cuda *cuda, size_t n) {
    size_t blocks = (n + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS, most = (size_t)cuda->n_processors * 16;
    return (unsigned)(blocks < most ? blocks : most);
}
#define TTI_LAUNCH_VALUES(ctx, kernel, n, ...)                                                         \
    do {                                                                                               \
        tti_cuda *cuda_ = tti_cuda_of(ctx);                                                            \
        size_t n_ = (n);                                                                               \
        if (n_ == 0) { return TT_OK; }                                                                 \
        TTI_LAUNCH(cuda_, kernel, tti_cuda_grid(cuda_, n_), TTI_CUDA_THREADS, 0, __VA_ARGS__);         \
        return tti_cuda_launched(ctx, #kernel);                                                        \
    } while (0)

/* Sum over the threads of a block, the same value and the same order for all: a tree within each warp, then the warps
 * one after the other. Threads are whole warps. */
template <class T> static __device__ T tti_gpu_sum(T value) {
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
    for (int step = 16; step > 0; step /= 2) { value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, step)); }
    if (n_warps == 1) { return value; }
    if (lane == 0) { parts[warp] = value; }
    __syncthreads();
    value = parts[0];
    for (unsigned i = 1; i < n_warps; i++) { value = fmaxf(value, parts[i]); }
    __syncthreads();
    return value;
}

/* ---- tensor cores ----
 * One product of tiles serves gemm and attention: C[i][j] += sum over k of A[i][k] B[j][k], A and B in shared memory
 * with k side by side, C in registers, spread over the warp as mma.m16n8 lays it out: of tile (i, j) lane 4g + t holds
 * rows 16i + g and 16i + g + 8, columns 8j + 2t and 8j + 2t + 1. Rows of shared tiles are TTI_PAD apart from a multiple
 * of 32, so that the 8 rows that a fragment reads lie in different banks. */
#define TTI_PAD 8
template <int MATH> struct tti_mode { typedef float element; enum { step = 8 }; };
template <> struct tti_mode<TT_CUDA_BF16> { typedef uint16_t element; enum { step = 16 }; };

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
static __device__ __forceinline__ void tti_gpu_mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ void tti_gpu_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* All tiles of a warp, one step of k. */
template <int MATH, int MI, int NI> static __device__ __forceinline__ void tti_gpu_mma(float c[MI][NI][4], const uint32_t a[MI][4], const uint32_t b[NI][2]) {
    TTI_UNROLL for (int i = 0; i < MI; i++) {
        TTI_UNROLL for (int j = 0; j < NI; j++) {
            if (MATH == TT_CUDA_BF16) { tti_gpu_mma_bf16(c[i][j], a[i], b[j]); }
            else { tti_gpu_mma_tf32(c[i][j], a[i], b[j]); }
        }
    }
}
#endif
/* What a tile in shared memory holds of a float. */
static __device__ __forceinline__ void tti_gpu_put(float *to, float x, int math) { *to = math == TT_CUDA_TF32 ? __uint_as_float(tti_gpu_tf32(x)) : x; }
static __device__ __forceinline__ void tti_gpu_put(uint16_t *to, float x, int) { *to = tti_gpu_bf16(x); }

/* A lane's share of a step of k. TF32: columns t and t + 4 of the fragment take elements 2t and 2t + 1, for A and B
 * alike: the sum over k is the same, and the two stand side by side. BF16: pairs 2t and 2t + 8, as the layout says. */
static __device__ __forceinline__ void tti_gpu_pair(const float *p, unsigned t, uint32_t &low, uint32_t &high) {
    float2 pair = *(const float2 *)(p + 2 * t);
    low = __float_as_uint(pair.x);
    high = __float_as_uint(pair.y);
}
static __device__ __forceinline__ void tti_gpu_pair(const uint16_t *p, unsigned t, uint32_t &low, uint32_t &high) {
    low = *(const uint32_t *)(p + 2 * t);
    high = *(const uint32_t *)(p + 2 * t + 8);
}
/* x = high + low, both TF32, to 21 bits. */
static __device__ __forceinline__ void tti_gpu_split(uint32_t &high, uint32_t &low) {
    float x = __uint_as_float(high);
    high = tti_gpu_tf32(x);
    low = tti_gpu_tf32(x - __uint_as_float(high));
}
template <int MATH, int MI, int NI, class E>
static __device__ __forceinline__ void tti_gpu_product(float c[MI][NI][4], const E *a, int lda, const E *b, int ldb, int k) {
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t fa[MI][4], fb[NI][2], la[MI][4], lb[NI][2];
    for (int p = 0; p < k; p += tti_mode<MATH>::step) {
        TTI_UNROLL for (int i = 0; i < MI; i++) {
            tti_gpu_pair(a + (i * 16 + g) * lda + p, t, fa[i][0], fa[i][2]);
            tti_gpu_pair(a + (i * 16 + g + 8) * lda + p, t, fa[i][1], fa[i][3]);
        }
        TTI_UNROLL for (int j = 0; j < NI; j++) { tti_gpu_pair(b + (j * 8 + g) * ldb + p, t, fb[j][0], fb[j][1]); }
        if (MATH == TT_CUDA_F32) {
            TTI_UNROLL for (int i = 0; i < MI; i++) {
                TTI_UNROLL for (int r = 0; r < 4; r++) { tti_gpu_split(fa[i][r], la[i][r]); }
            }
            TTI_UNROLL for (int j = 0; j < NI; j++) { tti_gpu_split(fb[j][0], lb[j][0]); tti_gpu_split(fb[j][1], lb[j][1]); }
            tti_gpu_mma<MATH, MI, NI>(c, la, fb);
            tti_gpu_mma<MATH, MI, NI>(c, fa, lb);
        }
        tti_gpu_mma<MATH, MI, NI>(c, fa, fb);
    }
}

/* Rows in global memory: line r begins at p + (r / group) * step + (r % group) * part. Heads of a group make the rows
 * of a token's queries; for all else group is 1. */
typedef struct tti_lines { const float *p; size_t step, part; int group; } tti_lines;
static __device__ __forceinline__ const float *tti_gpu_line(const tti_lines &l, int r) {
    return l.group == 1 ? l.p + (size_t)r * l.step : l.p + (size_t)(r / l.group) * l.step + (size_t)(r % l.group) * l.part;
}
/* A tile of LINES x WIDTH from line first on, column x0 on, into shared memory; what lies beyond `lines` and `width` is
 * 0. TURNED: element (line, x) goes to to[x * ld + line], else to[line * ld + x]. */
template <int MATH, int LINES, int WIDTH, int TURNED, class E>
static __device__ __forceinline__ void tti_gpu_fill(E *to, int ld, const tti_lines &from, int first, int lines, int x0, int width) {
    for (int i = (int)threadIdx.x; i < LINES * WIDTH; i += (int)blockDim.x) {
        int line = i / WIDTH, x = i % WIDTH;
        float value = line < lines && x < width ? tti_gpu_line(from, first + line)[x0 + x] : 0.0f;
        tti_gpu_put(to + (TURNED ? x * ld + line : line * ld + x), value, MATH);
    }
}

/* ---- matrix product ---- */
static __device__ float tti_gpu_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
static __device__ float tti_gpu_normal_cdf(float x) { return 0.5f * erfcf(-0.707106781f * x); }
/* gelu(x) = x (1 + tanh u) / 2 = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3)   (Hendrycks and Gimpel 2016) */
static __device__ float tti_gpu_gelu_sigmoid(float x) { return tti_gpu_sigmoid(1.59576912f * x * fmaf(0.044715f * x, x, 1.0f)); }
/* op(x) of tt_unary. */
static __device__ float tti_gpu_value(int op, float x, float p0, float p1) {
    switch (op) {
    case TT_NEG: return -x;
    case TT_EXP: return expf(x);
    case TT_LOG: return logf(x);
    case TT_TANH: return tanhf(x);
    case TT_CLAMP: x = p0 > x ? p0 : x; return p1 < x ? p1 : x;
    case TT_SCALE: return x * p0;
    case TT_GELU_TANH: return x * tti_gpu_gelu_sigmoid(x);
    default: return x * tti_gpu_normal_cdf(x);
    }
}
/* Naive: the chain of the CPU's kernels, bit for bit. */
static __global__ void tti_gpu_gemm(tt_gemm_args g) {
    size_t i = (size_t)blockIdx.y * blockDim.y + threadIdx.y, j = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    size_t a_row = g.transpose_a ? 1 : (size_t)g.lda, a_k = g.transpose_a ? (size_t)g.lda : 1;
    size_t b_column = g.transpose_b ? (size_t)g.ldb : 1, b_k = g.transpose_b ? 1 : (size_t)g.ldb;
    for (; j < (size_t)g.n && i < (size_t)g.m; i += (size_t)gridDim.y * blockDim.y) {
        float *c = g.c + i * (size_t)g.ldc + j, sum = g.accumulate ? *c : g.bias ? g.bias[j] : 0.0f;
        for (size_t k = 0; k < (size_t)g.k; k++) { sum = fmaf(g.a[i * a_row + k * a_k], g.b[j * b_column + k * b_k], sum); }
        *c = sum;
        if (g.activation) { g.y[i * (size_t)g.ldc + j] = tti_gpu_value(g.activation, sum, 0.0f, 0.0f); }
    }
}
/* In tiles: a block makes TTI_TILE x TTI_TILE of C in steps of TTI_TILE_K; its 8 warps make 64 x 32 each. C is taken up
 * where it stands (or from the bias), so a product that is split along k at a multiple of 16 keeps its bits. */
#define TTI_TILE 128
#define TTI_TILE_K 32
template <int MATH> static __global__ void __launch_bounds__(256) tti_gpu_gemm_tiles(tt_gemm_args g) {
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
#define TTI_C_ROW(i, r) (row + (i) * 16 + (r) / 2 * 8)
#define TTI_C_COLUMN(j, r) (column + (j) * 8 + (r) % 2)
#define TTI_EACH_C(i, j, r) TTI_UNROLL for (int i = 0; i < 4; i++) TTI_UNROLL for (int j = 0; j < 4; j++) TTI_UNROLL for (int r = 0; r < 4; r++)
    TTI_EACH_C(i, j, r) {
        int y = TTI_C_ROW(i, r), x = TTI_C_COLUMN(j, r);
        c[i][j][r] = 0.0f;
        if (y >= rows || x >= columns) { continue; }
        if (g.accumulate) { c[i][j][r] = g.c[(size_t)(m0 + y) * (size_t)g.ldc + (size_t)(n0 + x)]; }
        else if (g.bias) { c[i][j][r] = g.bias[n0 + x]; }
    }
    for (int k0 = 0; k0 < g.k; k0 += TTI_TILE_K) {
        const int ks = min(TTI_TILE_K, g.k - k0);
        if (g.transpose_a) { tti_gpu_fill<MATH, TTI_TILE_K, TTI_TILE, 1>(a_tile, LD, a, k0, ks, m0, rows); }
        else { tti_gpu_fill<MATH, TTI_TILE, TTI_TILE_K, 0>(a_tile, LD, a, m0, rows, k0, ks); }
        if (g.transpose_b) { tti_gpu_fill<MATH, TTI_TILE, TTI_TILE_K, 0>(b_tile, LD, b, n0, columns, k0, ks); }
        else { tti_gpu_fill<MATH, TTI_TILE_K, TTI_TILE, 1>(b_tile, LD, b, k0, ks, n0, columns); }
        __syncthreads();
        tti_gpu_product<MATH, 4, 4>(c, a_tile + warp / 4 * 64 * LD, LD, b_tile + warp % 4 * 32 * LD, LD, TTI_TILE_K);
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
    dim3 threads(32, 8), grid(((unsigned)g->n + 31) / 32, min(((unsigned)g->m + 7) / 8, 65535u));
    TTI_LAUNCH(cuda, tti_gpu_gemm, grid, threads, 0, *g);
    return tti_cuda_launched(ctx, "gemm");
}
static tt_status tti_cuda_gemm_tiles(tt_context *ctx, const tt_gemm_args *g) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    dim3 grid(((unsigned)g->m + TTI_TILE - 1) / TTI_TILE, ((unsigned)g->n + TTI_TILE - 1) / TTI_TILE);
    void (*kernel)(tt_gemm_args) = cuda->math == TT_CUDA_BF16 ? tti_gpu_gemm_tiles<TT_CUDA_BF16>
                                 : cuda->math == TT_CUDA_TF32 ? tti_gpu_gemm_tiles<TT_CUDA_TF32> : tti_gpu_gemm_tiles<TT_CUDA_F32>;
    if (grid.y > 65535) { return tt_fail(ctx, TT_ERR_ARG, "gemm: n is %d, expected at most %d", g->n, 65535 * TTI_TILE); }
    TTI_LAUNCH(cuda, kernel, grid, TTI_CUDA_THREADS, 0, *g);
    return tti_cuda_launched(ctx, "gemm_tiles");
}
#ifndef TT_CUDA_NO_CUBLAS
static __global__ void tti_gpu_activate(tt_gemm_args g) {
    TTI_EACH_VALUE(i, (size_t)g.m * (size_t)g.n) {
        size_t at = i / (size_t)g.n * (size_t)g.ldc + i % (size_t)g.n;
        g.y[at] = tti_gpu_value(g.activation, g.c[at], 0.0f, 0.0f);
    }
}
/* Rows of floats to rows of bf16, their lengths rounded up to a multiple of 8. */
static __global__ void tti_gpu_pack_bf16(uint16_t *to, const float *from, size_t rows, size_t columns, size_t to_step, size_t from_step) {
    TTI_EACH_VALUE(i, rows * to_step) {
        size_t row = i / to_step, column = i % to_step;
        to[i] = column < columns ? tti_gpu_bf16(from[row * from_step + column]) : (uint16_t)0;
    }
}
static tt_status tti_cuda_pack_bf16(tt_context *ctx, int which, const float **matrix, int rows, int columns, int *ld) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t step = ((size_t)columns + 7) / 8 * 8, n = (size_t)rows * step;
    uint16_t *to = (uint16_t *)tti_cuda_scratch(ctx, which, n * sizeof *to);
    if (!to) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_pack_bf16, tti_cuda_grid(cuda, n), TTI_CUDA_THREADS, 0, to, *matrix, (size_t)rows, (size_t)columns, step, (size_t)*ld);
    *matrix = (const float *)(const void *)to;
    *ld = (int)step;
    return tti_cuda_launched(ctx, "pack_bf16");
}
/* The largest power of two up to 256 that divides the address. */
static uint32_t tti_cuda_alignment(const void *p) {
    uint32_t alignment = 256;
    while ((uintptr_t)p % alignment) { alignment /= 2; }
    return alignment;
}
/* cuBLASLt counts columns first. A row-major matrix read that way is its transpose, so it is asked for C' = B' A':
 * its first factor is our B, its rows are our n. */
typedef struct tti_blas { cublasLtMatmulDesc_t product; cublasLtMatrixLayout_t a, b, c; cublasLtMatmulPreference_t preference; } tti_blas;
static int tti_cuda_blas_begin(tti_blas *t, const tt_gemm_args *g, int math) {
    const cudaDataType_t in = math == TT_CUDA_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t yes = CUBLAS_OP_T, no = CUBLAS_OP_N;
    const int biased = g->bias && !g->accumulate;
    const cublasLtEpilogue_t epilogue = !g->activation ? CUBLASLT_EPILOGUE_BIAS : biased ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    const int64_t ldc = g->ldc;
    const uint64_t m = (uint64_t)g->m, n = (uint64_t)g->n, k = (uint64_t)g->k;
    int bad = cublasLtMatmulDescCreate(&t->product, math == TT_CUDA_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS
        || cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_TRANSA, g->transpose_b ? &yes : &no, sizeof yes) != CUBLAS_STATUS_SUCCESS
        || cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_TRANSB, g->transpose_a ? &yes : &no, sizeof yes) != CUBLAS_STATUS_SUCCESS
        || cublasLtMatrixLayoutCreate(&t->b, in, g->transpose_b ? k : n, g->transpose_b ? n : k, g->ldb) != CUBLAS_STATUS_SUCCESS
        || cublasLtMatrixLayoutCreate(&t->a, in, g->transpose_a ? m : k, g->transpose_a ? k : m, g->lda) != CUBLAS_STATUS_SUCCESS
        || cublasLtMatrixLayoutCreate(&t->c, CUDA_R_32F, n, m, g->ldc) != CUBLAS_STATUS_SUCCESS;
    if (!bad && (biased || g->activation)) { bad = cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) != CUBLAS_STATUS_SUCCESS; }
    if (!bad && biased) { bad = cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias) != CUBLAS_STATUS_SUCCESS; }
    if (!bad && g->activation) {
        bad = cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &g->c, sizeof g->c) != CUBLAS_STATUS_SUCCESS
           || cublasLtMatmulDescSetAttribute(t->product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ldc, sizeof ldc) != CUBLAS_STATUS_SUCCESS;
    }
    return !bad;
}
static void tti_cuda_blas_end(tti_blas *t) {
    if (t->preference) { cublasLtMatmulPreferenceDestroy(t->preference); }
    if (t->a) { cublasLtMatrixLayoutDestroy(t->a); }
    if (t->b) { cublasLtMatrixLayoutDestroy(t->b); }
    if (t->c) { cublasLtMatrixLayoutDestroy(t->c); }
    if (t->product) { cublasLtMatmulDescDestroy(t->product); }
}
/* The library's first choice for this shape, asked for once. */
static tti_plan *tti_cuda_plan(tti_cuda *cuda, tti_blas *t, const tt_gemm_args *g, int math) {
    const size_t workspace = TTI_CUDA_WORKSPACE;
    uint32_t a = tti_cuda_alignment(g->a), b = tti_cuda_alignment(g->b), c = tti_cuda_alignment(g->activation ? g->y : g->c), bias = g->bias ? tti_cuda_alignment(g->bias) : 0;
    cublasLtMatmulHeuristicResult_t result;
    tti_plan_key key;
    tti_plan *plan;
    int found = 0;
    memset(&key, 0, sizeof key);
    key.m = g->m; key.n = g->n; key.k = g->k; key.lda = g->lda; key.ldb = g->ldb; key.ldc = g->ldc;
    key.transposes = g->transpose_a | g->transpose_b << 1;
    key.kind = math * 8 + (g->activation ? 4 : 0) + (g->accumulate ? 2 : g->bias ? 1 : 0);
    key.alignments[0] = a; key.alignments[1] = b; key.alignments[2] = c; key.alignments[3] = bias;
    plan = &cuda->plans[tt_hash(&key, sizeof key, 0) % TTI_CUDA_PLANS];
    if (plan->known && memcmp(&plan->key, &key, sizeof key) == 0) { return plan; }
    plan->key = key;
    plan->known = 1;
    plan->found = cublasLtMatmulPreferenceCreate(&t->preference) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(t->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(t->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b, sizeof b) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(t->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(t->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulPreferenceSetAttribute(t->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c) == CUBLAS_STATUS_SUCCESS
        && cublasLtMatmulAlgoGetHeuristic(cuda->blas, t->product, t->b, t->a, t->c, t->c, t->preference, 1, &result, &found) == CUBLAS_STATUS_SUCCESS && found > 0;
    if (plan->found) { plan->algo = result.algo; }
    return plan;
}
/* Whether cuBLASLt makes this activation too: its GELU is the tanh form, and of C, which it calls aux, it wants rows of a
 * multiple of 8, 16 bytes aligned. */
static int tti_cuda_activates(const tt_gemm_args *g) {
    return g->activation == TT_GELU_TANH && !g->accumulate && g->y != g->c && g->n % 8 == 0 && g->ldc % 8 == 0 && tti_cuda_alignment(g->c) >= 16;
}
static tt_status tti_cuda_gemm_blas(tt_context *ctx, const tt_gemm_args *args);
/* The product, then the activation. */
static tt_status tti_cuda_gemm_apart(tt_context *ctx, const tt_gemm_args *args) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_gemm_args g = *args;
    tt_status status;
    g.activation = (tt_unary)0;
    status = tti_cuda_gemm_blas(ctx, &g);
    if (status != TT_OK) { return status; }
    TTI_LAUNCH(cuda, tti_gpu_activate, tti_cuda_grid(cuda, (size_t)g.m * (size_t)g.n), TTI_CUDA_THREADS, 0, *args);
    return tti_cuda_launched(ctx, "activate");
}
/* bf16: both factors are rounded first, unless there are so few rows that reading the weights is all the work. A shape
 * that cuBLASLt does not take is made in our tiles. */
static tt_status tti_cuda_gemm_blas(tt_context *ctx, const tt_gemm_args *args) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_gemm_args g = *args;
    tti_blas t = TT_INIT;
    tti_plan *plan = NULL;
    const float one = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
    int math = cuda->math == TT_CUDA_BF16 && g.m <= 32 && !g.transpose_a ? TT_CUDA_TF32 : cuda->math;
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    float *out = g.activation ? g.y : g.c;
    if (g.activation && !tti_cuda_activates(&g)) { return tti_cuda_gemm_apart(ctx, args); }
    if (math == TT_CUDA_BF16) {
        if (tti_cuda_pack_bf16(ctx, TTI_SCRATCH_A, &g.a, g.transpose_a ? g.k : g.m, g.transpose_a ? g.m : g.k, &g.lda) != TT_OK) { return tt_error_status(ctx); }
        if (tti_cuda_pack_bf16(ctx, TTI_SCRATCH_B, &g.b, g.transpose_b ? g.n : g.k, g.transpose_b ? g.k : g.n, &g.ldb) != TT_OK) { return tt_error_status(ctx); }
    }
    if (tti_cuda_blas_begin(&t, &g, math)) { plan = tti_cuda_plan(cuda, &t, &g, math); }
    if (plan && plan->found) {
        status = cublasLtMatmul(cuda->blas, t.product, &one, g.b, t.b, g.a, t.a, &beta, out, t.c, out, t.c, &plan->algo, cuda->workspace, TTI_CUDA_WORKSPACE, cuda->stream);
    }
    tti_cuda_blas_end(&t);
    if (status == CUBLAS_STATUS_SUCCESS) { return TT_OK; }
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) {
        if (cuda->held) { cuda->lost = 1; return TT_OK; }
        return tt_fail(ctx, TT_ERR_DEVICE, "cuda: cuBLASLt fails with status %d at m %d, n %d, k %d", (int)status, args->m, args->n, args->k);
    }
    return args->activation ? tti_cuda_gemm_apart(ctx, args) : tti_cuda_gemm_tiles(ctx, args);
}
#endif
static tt_status tti_cuda_gemm(tt_context *ctx, const tt_gemm_args *args) {
    const tti_cuda *cuda = tti_cuda_of(ctx);
    if (args->m < 0 || args->n < 0 || args->k < 0) { return tt_fail(ctx, TT_ERR_ARG, "gemm: m, n, k are %d, %d, %d, expected >= 0", args->m, args->n, args->k); }
    if (args->m == 0 || args->n == 0 || (args->k == 0 && args->accumulate && !args->activation)) { return TT_OK; }
    if (args->k == 0 || cuda->kernels == TT_CUDA_NAIVE) { return tti_cuda_gemm_naive(ctx, args); }
#ifndef TT_CUDA_NO_CUBLAS
    if (cuda->kernels == TT_CUDA_FAST) { return tti_cuda_gemm_blas(ctx, args); }
#endif
    return tti_cuda_gemm_tiles(ctx, args);
}

/* ---- attention (FlashAttention-2, Dao 2023, arXiv 2307.08691) ----
 * p = softmax(scale q k'),  out = p v.   dv = p' dout,  ds = p (dout v' - delta),  dq = scale ds k,  dk = scale ds' q,
 * delta = sum_d dout out. The queries of one key-value head are one matrix: row r is token r / group, head r % group. */
typedef struct tti_heads { int first, tokens, position, key_row, group; } tti_heads;      /* of one sequence */
static __device__ __forceinline__ tti_heads tti_gpu_heads(const tt_attention_args &a, int s) {
    tti_heads u;
    u.first = a.offsets[s];
    u.tokens = a.offsets[s + 1] - u.first;
    u.position = a.query_start ? a.query_start[s] : 0;
    u.key_row = a.key_start ? a.key_start[s] : u.first;
    u.group = a.n_heads / a.n_kv_heads;
    return u;
}
/* Lines of x [tokens, heads * dim] that are u's rows of a key-value head; `keys`: of k or v, whose lines are positions. */
static __device__ __forceinline__ tti_lines tti_gpu_rows(const tt_attention_args &a, const tti_heads &u, const float *x, int kv_head) {
    size_t dim = (size_t)a.head_dim, step = (size_t)a.n_heads * dim;
    tti_lines l = {x + (size_t)u.first * step + (size_t)(kv_head * u.group) * dim, step, dim, u.group};
    return l;
}
static __device__ __forceinline__ tti_lines tti_gpu_keys(const tt_attention_args &a, const tti_heads &u, const float *x, int kv_head) {
    size_t dim = (size_t)a.head_dim, step = (size_t)a.n_kv_heads * dim;
    tti_lines l = {x + (size_t)u.key_row * step + (size_t)kv_head * dim, step, 0, 1};
    return l;
}

/* Naive: one thread per row (dk and dv: per key). */
static __device__ int tti_gpu_sequence_of(const tt_attention_args &a, int token) {
    int low = 0, high = a.n_sequences;                       /* offsets[low] <= token < offsets[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (a.offsets[middle] <= token) { low = middle; } else { high = middle; }
    }
    return low;
}
static __device__ float tti_gpu_dot(const float *x, const float *y, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) { sum = fmaf(x[i], y[i], sum); }
    return sum;
}
static __global__ void tti_gpu_attention_forward(tt_attention_args a) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_heads) {
        int token = (int)(i / (size_t)a.n_heads), head = (int)(i % (size_t)a.n_heads), dim = a.head_dim;
        tti_heads u = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines k = tti_gpu_keys(a, u, a.k, head / u.group), v = tti_gpu_keys(a, u, a.v, head / u.group);
        const float *q = a.q + i * (size_t)dim;
        float *out = a.out + i * (size_t)dim, max = -INFINITY, sum = 0.0f;
        int n_keys = u.position + token - u.first + 1;
        for (int j = 0; j < n_keys; j++) { max = fmaxf(max, a.scale * tti_gpu_dot(q, tti_gpu_line(k, j), dim)); }
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
static __device__ void tti_gpu_attention_slope(const tt_attention_args &a, const float *delta, size_t row, const float *k, const float *v, float *p, float *ds) {
    size_t at = row * (size_t)a.head_dim;
    *p = expf(a.scale * tti_gpu_dot(a.q + at, k, a.head_dim) - a.lse[row]);
    *ds = *p * (tti_gpu_dot(a.dout + at, v, a.head_dim) - delta[row]);
}
static __global__ void tti_gpu_attention_dq(tt_attention_args a, const float *delta) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_heads) {
        int token = (int)(i / (size_t)a.n_heads), head = (int)(i % (size_t)a.n_heads);
        tti_heads u = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines k = tti_gpu_keys(a, u, a.k, head / u.group), v = tti_gpu_keys(a, u, a.v, head / u.group);
        float *dq = a.dq + i * (size_t)a.head_dim, p, ds;
        for (int j = 0; j <= token - u.first; j++) {
            tti_gpu_attention_slope(a, delta, i, tti_gpu_line(k, j), tti_gpu_line(v, j), &p, &ds);
            for (int d = 0; d < a.head_dim; d++) { dq[d] = fmaf(a.scale * ds, tti_gpu_line(k, j)[d], dq[d]); }
        }
    }
}
static __global__ void tti_gpu_attention_dkv(tt_attention_args a, const float *delta) {
    TTI_EACH_VALUE(i, (size_t)a.n_tokens * (size_t)a.n_kv_heads) {
        int token = (int)(i / (size_t)a.n_kv_heads), kv_head = (int)(i % (size_t)a.n_kv_heads), dim = a.head_dim;
        tti_heads u = tti_gpu_heads(a, tti_gpu_sequence_of(a, token));
        tti_lines q = tti_gpu_rows(a, u, a.q, kv_head), g = tti_gpu_rows(a, u, a.dout, kv_head);
        size_t at = i * (size_t)dim;
        float p, ds;
        for (int r = (token - u.first) * u.group; r < u.tokens * u.group; r++) {
            const float *query = tti_gpu_line(q, r), *dout = tti_gpu_line(g, r);
            tti_gpu_attention_slope(a, delta, (size_t)(query - a.q) / (size_t)dim, a.k + at, a.v + at, &p, &ds);
            for (int d = 0; a.dv && d < dim; d++) { a.dv[at + (size_t)d] = fmaf(p, dout[d], a.dv[at + (size_t)d]); }
            for (int d = 0; a.dk && d < dim; d++) { a.dk[at + (size_t)d] = fmaf(a.scale * ds, query[d], a.dk[at + (size_t)d]); }
        }
    }
}
/* delta[row] = sum_d dout out; a warp for each row. */
static __global__ void tti_gpu_attention_delta(float *delta, const float *dout, const float *out, size_t rows, int dim) {
    size_t row = (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    float sum = 0.0f;
    if (row < rows) { for (int d = (int)(threadIdx.x % 32); d < dim; d += 32) { sum = fmaf(dout[row * (size_t)dim + (size_t)d], out[row * (size_t)dim + (size_t)d], sum); } }
    for (int step = 16; step > 0; step /= 2) { sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step); }
    if (row < rows && threadIdx.x % 32 == 0) { delta[row] = sum; }
}

/* In tiles: TTI_ROWS rows against TTI_ROWS keys at a time. The 8 warps stand 2 x 4 over a tile: each makes 32 x 16 of the
 * scores, 32 x DIM/4 of out, dq, dk and dv. Grid: sequence, block (the longest first), key-value head. Key blocks begin
 * at key 0 and rows meet them one by one, so a row's bits do not depend on where its block begins. */
#define TTI_ROWS 64
#define TTI_LD (TTI_ROWS + TTI_PAD)
#define TTI_WARP_ROW(i, r) ((int)(threadIdx.x / 128 * 32 + threadIdx.x % 32 / 4) + (i) * 16 + (r) / 2 * 8)
#define TTI_WARP_COLUMN(width, j, r) ((int)(threadIdx.x / 32 % 4 * (width) + threadIdx.x % 4 * 2) + (j) * 8 + (r) % 2)
#define TTI_EACH_RESULT(NI, i, j, r) TTI_UNROLL for (int i = 0; i < 2; i++) TTI_UNROLL for (int j = 0; j < NI; j++) TTI_UNROLL for (int r = 0; r < 4; r++)

template <int MATH, int DIM> static __device__ __forceinline__ void tti_gpu_scores(float c[2][2][4], const typename tti_mode<MATH>::element *rows,
                                                                                   const typename tti_mode<MATH>::element *columns, int k) {
    enum { LD = DIM + TTI_PAD };
    TTI_EACH_RESULT(2, i, j, r) { c[i][j][r] = 0.0f; }
    tti_gpu_product<MATH, 2, 2>(c, rows + threadIdx.x / 128 * 32 * LD, LD, columns + threadIdx.x / 32 % 4 * 16 * LD, LD, k);
}
/* out += s x,  s [TTI_ROWS, TTI_LD] and x turned, [DIM, TTI_LD] */
template <int MATH, int DIM> static __device__ __forceinline__ void tti_gpu_attend(float out[2][DIM / 32][4], const typename tti_mode<MATH>::element *s,
                                                                                   const typename tti_mode<MATH>::element *x) {
    tti_gpu_product<MATH, 2, DIM / 32>(out, s + threadIdx.x / 128 * 32 * TTI_LD, TTI_LD, x + threadIdx.x / 32 % 4 * (DIM / 4) * TTI_LD, TTI_LD, TTI_ROWS);
}
template <int MATH, int DIM> static size_t tti_cuda_forward_bytes(void) {
    size_t element = sizeof(typename tti_mode<MATH>::element);
    return element * (TTI_ROWS * (DIM + TTI_PAD) + DIM * TTI_LD) + sizeof(float) * (TTI_ROWS * TTI_LD + 3 * TTI_ROWS) + (element < sizeof(float) ? element * TTI_ROWS * TTI_LD : 0);
}
template <int MATH, int DIM> static __global__ void __launch_bounds__(256) tti_gpu_attention_forward_tiles(tt_attention_args a) {
    typedef typename tti_mode<MATH>::element E;
    TTI_DYNAMIC_SHARED(shared);
    E *q = (E *)shared, *kv = q + TTI_ROWS * (DIM + TTI_PAD);
    float *s = (float *)(kv + DIM * TTI_LD), *max = s + TTI_ROWS * TTI_LD, *sum = max + TTI_ROWS, *shrink = sum + TTI_ROWS;
    E *p = sizeof(E) == sizeof(float) ? (E *)s : (E *)(shrink + TTI_ROWS);      /* floats in place */
    const tti_heads u = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.z, dim = a.head_dim, k_dim = (dim + 15) / 16 * 16, all = u.tokens * u.group;
    const int row0 = ((all + TTI_ROWS - 1) / TTI_ROWS - 1 - (int)blockIdx.y) * TTI_ROWS, rows = min(TTI_ROWS, all - row0);
    const int n_keys = u.position + (row0 + rows - 1) / u.group + 1;
    const tti_lines keys = tti_gpu_keys(a, u, a.k, kv_head), values = tti_gpu_keys(a, u, a.v, kv_head);
    float out[2][DIM / 32][4], c[2][2][4];
    if (row0 < 0) { return; }
    TTI_EACH_RESULT(DIM / 32, i, j, r) { out[i][j][r] = 0.0f; }
    if (threadIdx.x < TTI_ROWS) { max[threadIdx.x] = -INFINITY; sum[threadIdx.x] = 0.0f; }
    tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(q, DIM + TTI_PAD, tti_gpu_rows(a, u, a.q, kv_head), row0, rows, 0, dim);
    for (int key0 = 0; key0 < n_keys; key0 += TTI_ROWS) {
        const int n = min(TTI_ROWS, n_keys - key0);
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(kv, DIM + TTI_PAD, keys, key0, n, 0, dim);
        __syncthreads();
        tti_gpu_scores<MATH, DIM>(c, q, kv, k_dim);
        TTI_EACH_RESULT(2, i, j, r) {
            int row = TTI_WARP_ROW(i, r), key = TTI_WARP_COLUMN(16, j, r);
            int seen = key < n && key0 + key <= u.position + (row0 + row) / u.group;
            s[row * TTI_LD + key] = seen ? a.scale * c[i][j][r] : -INFINITY;
        }
        __syncthreads();
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 1>(kv, TTI_LD, values, key0, n, 0, dim);
        {   /* four neighbours for a row: s becomes exp(s - max), old sums shrink by exp(old max - max) */
            const int row = (int)threadIdx.x / 4, begin = row * TTI_LD + (int)threadIdx.x % 4 * 16;
            float top = -INFINITY, total = 0.0f, before = max[row];
            for (int i = 0; i < 16; i++) { top = fmaxf(top, s[begin + i]); }
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
            top = fmaxf(top, before);
            for (int i = 0; i < 16; i++) {
                float e = expf(s[begin + i] - top);
                total += e;
                tti_gpu_put(p + begin + i, e, MATH);
            }
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
            total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
            if (threadIdx.x % 4 == 0) {
                shrink[row] = expf(before - top);
                sum[row] = sum[row] * shrink[row] + total;
                max[row] = top;
            }
        }
        __syncthreads();
        TTI_EACH_RESULT(DIM / 32, i, j, r) { out[i][j][r] *= shrink[TTI_WARP_ROW(i, r)]; }
        tti_gpu_attend<MATH, DIM>(out, p, kv);
        __syncthreads();
    }
    TTI_EACH_RESULT(DIM / 32, i, j, r) {
        int row = TTI_WARP_ROW(i, r), d = TTI_WARP_COLUMN(DIM / 4, j, r);
        tti_lines to = tti_gpu_rows(a, u, a.out, kv_head);
        if (row < rows && d < dim) { ((float *)tti_gpu_line(to, row0 + row))[d] = out[i][j][r] / sum[row]; }
    }
    if (a.lse && (int)threadIdx.x < rows) {
        int row = row0 + (int)threadIdx.x;
        a.lse[(size_t)(u.first + row / u.group) * (size_t)a.n_heads + (size_t)(kv_head * u.group + row % u.group)] = max[threadIdx.x] + logf(sum[threadIdx.x]);
    }
}
/* lse and delta of TTI_ROWS rows. */
static __device__ __forceinline__ void tti_gpu_statistics(const tt_attention_args &a, const tti_heads &u, const float *delta, int kv_head, int row0, int rows, float *to_lse, float *to_delta) {
    int row = row0 + (int)threadIdx.x;
    size_t at = (size_t)(u.first + row / u.group) * (size_t)a.n_heads + (size_t)(kv_head * u.group + row % u.group);
    if (threadIdx.x >= TTI_ROWS) { return; }
    to_lse[threadIdx.x] = (int)threadIdx.x < rows ? a.lse[at] : 0.0f;
    to_delta[threadIdx.x] = (int)threadIdx.x < rows ? delta[at] : 0.0f;
}
template <int MATH, int DIM> static size_t tti_cuda_backward_bytes(void) {
    return sizeof(typename tti_mode<MATH>::element) * (2 * TTI_ROWS * (DIM + TTI_PAD) + DIM * TTI_LD + TTI_ROWS * TTI_LD) + sizeof(float) * 2 * TTI_ROWS;
}
/* A block of rows goes over its keys. x holds in turn k, v and k turned. */
template <int MATH, int DIM> static __global__ void __launch_bounds__(256) tti_gpu_attention_dq_tiles(tt_attention_args a, const float *delta_all) {
    typedef typename tti_mode<MATH>::element E;
    TTI_DYNAMIC_SHARED(shared);
    E *q = (E *)shared, *dout = q + TTI_ROWS * (DIM + TTI_PAD), *x = dout + TTI_ROWS * (DIM + TTI_PAD), *ds = x + DIM * TTI_LD;
    float *lse = (float *)(ds + TTI_ROWS * TTI_LD), *delta = lse + TTI_ROWS;
    const tti_heads u = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.z, dim = a.head_dim, k_dim = (dim + 15) / 16 * 16, all = u.tokens * u.group;
    const int row0 = ((all + TTI_ROWS - 1) / TTI_ROWS - 1 - (int)blockIdx.y) * TTI_ROWS, rows = min(TTI_ROWS, all - row0);
    const int n_keys = (row0 + rows - 1) / u.group + 1;
    const tti_lines keys = tti_gpu_keys(a, u, a.k, kv_head), values = tti_gpu_keys(a, u, a.v, kv_head);
    float dq[2][DIM / 32][4], c[2][2][4], d[2][2][4];
    if (row0 < 0) { return; }
    TTI_EACH_RESULT(DIM / 32, i, j, r) { dq[i][j][r] = 0.0f; }
    tti_gpu_statistics(a, u, delta_all, kv_head, row0, rows, lse, delta);
    tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(q, DIM + TTI_PAD, tti_gpu_rows(a, u, a.q, kv_head), row0, rows, 0, dim);
    tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(dout, DIM + TTI_PAD, tti_gpu_rows(a, u, a.dout, kv_head), row0, rows, 0, dim);
    for (int key0 = 0; key0 < n_keys; key0 += TTI_ROWS) {
        const int n = min(TTI_ROWS, n_keys - key0);
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(x, DIM + TTI_PAD, keys, key0, n, 0, dim);
        __syncthreads();
        tti_gpu_scores<MATH, DIM>(c, q, x, k_dim);
        __syncthreads();
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(x, DIM + TTI_PAD, values, key0, n, 0, dim);
        __syncthreads();
        tti_gpu_scores<MATH, DIM>(d, dout, x, k_dim);
        TTI_EACH_RESULT(2, i, j, r) {
            int row = TTI_WARP_ROW(i, r), key = TTI_WARP_COLUMN(16, j, r), seen = row < rows && key < n && key0 + key <= (row0 + row) / u.group;
            float p = seen ? expf(a.scale * c[i][j][r] - lse[row]) : 0.0f;
            tti_gpu_put(ds + row * TTI_LD + key, p * (d[i][j][r] - delta[row]), MATH);
        }
        __syncthreads();
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 1>(x, TTI_LD, keys, key0, n, 0, dim);
        __syncthreads();
        tti_gpu_attend<MATH, DIM>(dq, ds, x);
        __syncthreads();
    }
    TTI_EACH_RESULT(DIM / 32, i, j, r) {
        int row = TTI_WARP_ROW(i, r), column = TTI_WARP_COLUMN(DIM / 4, j, r);
        float *to = (float *)tti_gpu_line(tti_gpu_rows(a, u, a.dq, kv_head), row0 + (row < rows ? row : 0)) + column;
        if (row < rows && column < dim) { *to += a.scale * dq[i][j][r]; }
    }
}
/* A block of keys goes over the rows that see it; scores stand turned, keys by rows. x holds in turn q, dout, and both turned. */
template <int MATH, int DIM> static __global__ void __launch_bounds__(256) tti_gpu_attention_dkv_tiles(tt_attention_args a, const float *delta_all) {
    typedef typename tti_mode<MATH>::element E;
    TTI_DYNAMIC_SHARED(shared);
    E *k = (E *)shared, *v = k + TTI_ROWS * (DIM + TTI_PAD), *x = v + TTI_ROWS * (DIM + TTI_PAD), *s = x + DIM * TTI_LD;
    float *lse = (float *)(s + TTI_ROWS * TTI_LD), *delta = lse + TTI_ROWS;
    const tti_heads u = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.z, dim = a.head_dim, k_dim = (dim + 15) / 16 * 16, all = u.tokens * u.group;
    const int key0 = (int)blockIdx.y * TTI_ROWS, n = min(TTI_ROWS, u.tokens - key0);
    const tti_lines queries = tti_gpu_rows(a, u, a.q, kv_head), douts = tti_gpu_rows(a, u, a.dout, kv_head);
    float dk[2][DIM / 32][4], dv[2][DIM / 32][4], c[2][2][4], d[2][2][4];
    if (n <= 0) { return; }
    TTI_EACH_RESULT(DIM / 32, i, j, r) { dk[i][j][r] = dv[i][j][r] = 0.0f; }
    tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(k, DIM + TTI_PAD, tti_gpu_keys(a, u, a.k, kv_head), key0, n, 0, dim);
    tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(v, DIM + TTI_PAD, tti_gpu_keys(a, u, a.v, kv_head), key0, n, 0, dim);
    for (int row0 = key0 * u.group; row0 < all; row0 += TTI_ROWS) {
        const int rows = min(TTI_ROWS, all - row0);
        tti_gpu_statistics(a, u, delta_all, kv_head, row0, rows, lse, delta);
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(x, DIM + TTI_PAD, queries, row0, rows, 0, dim);
        __syncthreads();
        tti_gpu_scores<MATH, DIM>(c, k, x, k_dim);
        __syncthreads();
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 0>(x, DIM + TTI_PAD, douts, row0, rows, 0, dim);
        __syncthreads();
        tti_gpu_scores<MATH, DIM>(d, v, x, k_dim);
        TTI_EACH_RESULT(2, i, j, r) {
            int key = TTI_WARP_ROW(i, r), row = TTI_WARP_COLUMN(16, j, r), seen = row < rows && key < n && key0 + key <= (row0 + row) / u.group;
            float p = seen ? expf(a.scale * c[i][j][r] - lse[row]) : 0.0f;
            d[i][j][r] = p * (d[i][j][r] - delta[row]);
            tti_gpu_put(s + key * TTI_LD + row, p, MATH);
        }
        __syncthreads();
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 1>(x, TTI_LD, douts, row0, rows, 0, dim);
        __syncthreads();
        tti_gpu_attend<MATH, DIM>(dv, s, x);
        __syncthreads();
        TTI_EACH_RESULT(2, i, j, r) { tti_gpu_put(s + TTI_WARP_ROW(i, r) * TTI_LD + TTI_WARP_COLUMN(16, j, r), d[i][j][r], MATH); }
        tti_gpu_fill<MATH, TTI_ROWS, DIM, 1>(x, TTI_LD, queries, row0, rows, 0, dim);
        __syncthreads();
        tti_gpu_attend<MATH, DIM>(dk, s, x);
        __syncthreads();
    }
    TTI_EACH_RESULT(DIM / 32, i, j, r) {
        int key = TTI_WARP_ROW(i, r), column = TTI_WARP_COLUMN(DIM / 4, j, r);
        size_t at = (size_t)(u.first + key0 + key) * (size_t)a.n_kv_heads * (size_t)dim + (size_t)(kv_head * dim + column);
        if (key >= n || column >= dim) { continue; }
        if (a.dv) { a.dv[at] += dv[i][j][r]; }
        if (a.dk) { a.dk[at] += a.scale * dk[i][j][r]; }
    }
}

/* Decoding: one query per sequence, all heads of a group against the cache in chunks of TTI_ROWS keys, which TTI_SPLITS
 * blocks share (block z takes chunks z, z + TTI_SPLITS, ...). Each leaves max, sum and unscaled out of its keys; they are
 * put together in order. The grid depends on the number of sequences only. */
#define TTI_SPLITS 8
static size_t tti_cuda_decode_bytes(int group, int dim) {
    return sizeof(float) * ((size_t)TTI_ROWS * (size_t)(dim + 1) + 2 * (size_t)group * (size_t)dim + (size_t)group * (TTI_ROWS + 3));
}
static __global__ void __launch_bounds__(256) tti_gpu_attention_decode(tt_attention_args a, float *partial) {
    TTI_DYNAMIC_SHARED(shared);
    const tti_heads u = tti_gpu_heads(a, (int)blockIdx.x);
    const int kv_head = (int)blockIdx.y, dim = a.head_dim, group = u.group, n_keys = u.position + 1, tid = (int)threadIdx.x, threads = (int)blockDim.x;
    float *tile = (float *)shared, *q = tile + TTI_ROWS * (dim + 1), *out = q + group * dim, *p = out + group * dim, *max = p + group * TTI_ROWS, *sum = max + group, *shrink = sum + group;
    const tti_lines keys = tti_gpu_keys(a, u, a.k, kv_head), values = tti_gpu_keys(a, u, a.v, kv_head);
    const float *query = tti_gpu_rows(a, u, a.q, kv_head).p;
    for (int i = tid; i < group * dim; i += threads) { q[i] = a.scale * query[i]; out[i] = 0.0f; }
    for (int i = tid; i < group; i += threads) { max[i] = -INFINITY; sum[i] = 0.0f; }
    for (int key0 = (int)blockIdx.z * TTI_ROWS; key0 < n_keys; key0 += TTI_SPLITS * TTI_ROWS) {
        const int n = min(TTI_ROWS, n_keys - key0);
        for (int i = tid; i < n * dim; i += threads) { tile[i / dim * (dim + 1) + i % dim] = tti_gpu_line(keys, key0 + i / dim)[i % dim]; }
        __syncthreads();
        for (int i = tid; i < group * TTI_ROWS; i += threads) {
            int key = i % TTI_ROWS;
            p[i] = key < n ? tti_gpu_dot(q + i / TTI_ROWS * dim, tile + key * (dim + 1), dim) : -INFINITY;
        }
        __syncthreads();
        for (int h = tid / 32; h < group; h += threads / 32) {
            float *s = p + h * TTI_ROWS + tid % 32, first = s[0], second = s[32], top = fmaxf(first, second), total;
            for (int step = 16; step > 0; step /= 2) { top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, step)); }
            top = fmaxf(top, max[h]);
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
        for (int i = tid; i < n * dim; i += threads) { tile[i / dim * (dim + 1) + i % dim] = tti_gpu_line(values, key0 + i / dim)[i % dim]; }
        __syncthreads();
        for (int i = tid; i < group * dim; i += threads) {
            const float *weights = p + i / dim * TTI_ROWS;
            float total = out[i] * shrink[i / dim];
            for (int key = 0; key < n; key++) { total = fmaf(weights[key], tile[key * (dim + 1) + i % dim], total); }
            out[i] = total;
        }
        __syncthreads();
    }
    partial += (((size_t)u.first * (size_t)a.n_heads + (size_t)(kv_head * group)) * TTI_SPLITS + blockIdx.z) * (size_t)(dim + 2);
    __syncthreads();
    for (int i = tid; i < group * (dim + 2); i += threads) {
        int h = i / (dim + 2), d = i % (dim + 2);
        partial[(size_t)h * TTI_SPLITS * (size_t)(dim + 2) + (size_t)d] = d == dim ? max[h] : d > dim ? sum[h] : out[h * dim + d];
    }
}
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

/* Tile kernels by head_dim and math; all NULL where none fits the device. */
typedef struct tti_attention_kernels {
    void (*forward)(tt_attention_args);
    void (*dq)(tt_attention_args, const float *), (*dkv)(tt_attention_args, const float *);
    size_t forward_bytes, backward_bytes;
} tti_attention_kernels;
template <int MATH, int DIM> static tti_attention_kernels tti_cuda_attention_kernels_of(void) {
    tti_attention_kernels k = {tti_gpu_attention_forward_tiles<MATH, DIM>, tti_gpu_attention_dq_tiles<MATH, DIM>, tti_gpu_attention_dkv_tiles<MATH, DIM>,
                               tti_cuda_forward_bytes<MATH, DIM>(), tti_cuda_backward_bytes<MATH, DIM>()};
    return k;
}
template <int MATH> static tti_attention_kernels tti_cuda_attention_kernels_at(int dim) {
    return dim <= 64 ? tti_cuda_attention_kernels_of<MATH, 64>() : dim <= 128 ? tti_cuda_attention_kernels_of<MATH, 128>() : tti_cuda_attention_kernels_of<MATH, 256>();
}
static tti_attention_kernels tti_cuda_attention_kernels(const tti_cuda *cuda, int dim) {
    tti_attention_kernels k = TT_INIT;
    if (cuda->kernels == TT_CUDA_NAIVE || dim > 256) { return k; }
    k = cuda->math == TT_CUDA_BF16 ? tti_cuda_attention_kernels_at<TT_CUDA_BF16>(dim)
      : cuda->math == TT_CUDA_TF32 ? tti_cuda_attention_kernels_at<TT_CUDA_TF32>(dim) : tti_cuda_attention_kernels_at<TT_CUDA_F32>(dim);
    if (k.forward_bytes > cuda->shared_limit) { k.forward = NULL; }
    if (k.backward_bytes > cuda->shared_limit) { k.dq = k.dkv = NULL; }
    return k;
}
static tt_status tti_cuda_attention_check(tt_context *ctx, const tt_attention_args *a) {
    if (a->n_kv_heads >= 1 && a->n_heads % a->n_kv_heads == 0 && a->head_dim >= 1 && a->n_kv_heads <= 65535) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "attention: n_heads %d, n_kv_heads %d, head_dim %d, expected a multiple and >= 1", a->n_heads, a->n_kv_heads, a->head_dim);
}
/* Most tokens in a sequence. */
static int tti_cuda_longest(const tt_attention_args *a) {
    int s, longest = 0;
    for (s = 0; s < a->n_sequences; s++) { if (a->host_offsets[s + 1] - a->host_offsets[s] > longest) { longest = a->host_offsets[s + 1] - a->host_offsets[s]; } }
    return longest;
}
static tt_status tti_cuda_attention_decode(tt_context *ctx, const tt_attention_args *a, size_t bytes) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t rows = (size_t)a->n_tokens * (size_t)a->n_heads;
    float *partial = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, rows * TTI_SPLITS * (size_t)(a->head_dim + 2) * sizeof(float));
    if (!partial) { return TT_ERR_MEM; }
    if (tti_cuda_check(ctx, cudaFuncSetAttribute(tti_gpu_attention_decode, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "attention_decode") != TT_OK) { return TT_ERR_DEVICE; }
    TTI_LAUNCH(cuda, tti_gpu_attention_decode, dim3((unsigned)a->n_sequences, (unsigned)a->n_kv_heads, TTI_SPLITS), TTI_CUDA_THREADS, bytes, *a, partial);
    TTI_LAUNCH(cuda, tti_gpu_attention_decode_end, tti_cuda_grid(cuda, rows * (size_t)a->head_dim), TTI_CUDA_THREADS, 0, *a, partial);
    return tti_cuda_launched(ctx, "attention_decode");
}
static tt_status tti_cuda_attention_forward(tt_context *ctx, const tt_attention_args *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tti_attention_kernels k;
    int longest, group;
    size_t decode_bytes;
    if (tti_cuda_attention_check(ctx, a) != TT_OK) { return TT_ERR_ARG; }
    longest = tti_cuda_longest(a);
    if (longest == 0) { return TT_OK; }
    group = a->n_heads / a->n_kv_heads;
    decode_bytes = tti_cuda_decode_bytes(group, a->head_dim);
    if (cuda->kernels == TT_CUDA_FAST && a->query_start && longest == 1 && a->n_tokens == a->n_sequences && decode_bytes <= cuda->shared_limit) {
        return tti_cuda_attention_decode(ctx, a, decode_bytes);
    }
    k = tti_cuda_attention_kernels(cuda, a->head_dim);
    if (k.forward && (longest * (size_t)group + TTI_ROWS - 1) / TTI_ROWS <= 65535) {
        dim3 grid((unsigned)a->n_sequences, (unsigned)((longest * group + TTI_ROWS - 1) / TTI_ROWS), (unsigned)a->n_kv_heads);
        if (tti_cuda_check(ctx, cudaFuncSetAttribute(k.forward, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)k.forward_bytes), "attention_forward") != TT_OK) { return TT_ERR_DEVICE; }
        TTI_LAUNCH(cuda, k.forward, grid, TTI_CUDA_THREADS, k.forward_bytes, *a);
    } else {
        TTI_LAUNCH(cuda, tti_gpu_attention_forward, tti_cuda_grid(cuda, (size_t)a->n_tokens * (size_t)a->n_heads), TTI_CUDA_THREADS, 0, *a);
    }
    return tti_cuda_launched(ctx, "attention_forward");
}
static tt_status tti_cuda_attention_backward_tiles(tt_context *ctx, const tt_attention_args *a, const tti_attention_kernels *k, const float *delta) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    unsigned longest = (unsigned)tti_cuda_longest(a), group = (unsigned)(a->n_heads / a->n_kv_heads);
    dim3 rows((unsigned)a->n_sequences, (longest * group + TTI_ROWS - 1) / TTI_ROWS, (unsigned)a->n_kv_heads);
    dim3 keys((unsigned)a->n_sequences, (longest + TTI_ROWS - 1) / TTI_ROWS, (unsigned)a->n_kv_heads);
    if (tti_cuda_check(ctx, cudaFuncSetAttribute(k->dq, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)k->backward_bytes), "attention_dq") != TT_OK) { return TT_ERR_DEVICE; }
    if (tti_cuda_check(ctx, cudaFuncSetAttribute(k->dkv, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)k->backward_bytes), "attention_dkv") != TT_OK) { return TT_ERR_DEVICE; }
    if (a->dq) { TTI_LAUNCH(cuda, k->dq, rows, TTI_CUDA_THREADS, k->backward_bytes, *a, delta); }
    if (a->dk || a->dv) { TTI_LAUNCH(cuda, k->dkv, keys, TTI_CUDA_THREADS, k->backward_bytes, *a, delta); }
    return tti_cuda_launched(ctx, "attention_backward");
}
static tt_status tti_cuda_attention_backward(tt_context *ctx, const tt_attention_args *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t rows = (size_t)a->n_tokens * (size_t)a->n_heads;
    tti_attention_kernels k;
    float *delta;
    if (tti_cuda_attention_check(ctx, a) != TT_OK) { return TT_ERR_ARG; }
    if (a->query_start || a->key_start || !a->lse) { return tt_fail(ctx, TT_ERR_ARG, "attention_backward: expected packed sequences and lse"); }
    if (rows == 0) { return TT_OK; }
    delta = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, rows * sizeof(float));
    if (!delta) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_attention_delta, (unsigned)((rows + 7) / 8), TTI_CUDA_THREADS, 0, delta, a->dout, a->out, rows, a->head_dim);
    k = tti_cuda_attention_kernels(cuda, a->head_dim);
    if (k.dq && ((size_t)tti_cuda_longest(a) * (size_t)(a->n_heads / a->n_kv_heads) + TTI_ROWS - 1) / TTI_ROWS <= 65535) { return tti_cuda_attention_backward_tiles(ctx, a, &k, delta); }
    if (a->dq) { TTI_LAUNCH(cuda, tti_gpu_attention_dq, tti_cuda_grid(cuda, rows), TTI_CUDA_THREADS, 0, *a, delta); }
    if (a->dk || a->dv) { TTI_LAUNCH(cuda, tti_gpu_attention_dkv, tti_cuda_grid(cuda, (size_t)a->n_tokens * (size_t)a->n_kv_heads), TTI_CUDA_THREADS, 0, *a, delta); }
    return tti_cuda_launched(ctx, "attention_backward");
}

/* ---- log-probs ----
 * Logits exist only as a block of TTI_CUDA_VOCAB_ROWS x TTI_CUDA_VOCAB_BLOCK: gemm makes it, a scan folds it into each
 * row's online softmax. Backward makes the same blocks again and turns them into dz in place. Row blocks go in order, so
 * that dw's chains run over the rows one after the other. */
typedef struct tti_cuda_softmax { float max, target; double sum, dot; } tti_cuda_softmax;      /* as in chapter 2 */
typedef struct tti_cuda_logits {
    float *z;
    size_t stride, columns, column, vocab;      /* of z; of this block; its first; of all blocks */
    float inv_temperature;
    const int32_t *targets;
    tti_cuda_softmax *states;
    float *logprobs, *entropy, *lse;
    const float *dlogprobs, *dentropy;
} tti_cuda_logits;

/* A block of threads for each row: its part of z joins the row's softmax; the last part gives the results. */
static __global__ void tti_gpu_logits_scan(tti_cuda_logits l) {
    const size_t row = blockIdx.x, target = (size_t)l.targets[row];
    const float *z = l.z + row * l.stride;
    float top = -INFINITY, sum = 0.0f, dot = 0.0f;
    for (size_t i = threadIdx.x; i < l.columns; i += blockDim.x) { top = fmaxf(top, z[i] * l.inv_temperature); }
    top = tti_gpu_max(top);
    if (l.column > 0) { top = fmaxf(top, l.states[row].max); }
    for (size_t i = threadIdx.x; i < l.columns; i += blockDim.x) {
        float d = z[i] * l.inv_temperature - top, e = expf(d);
        sum += e;
        dot = fmaf(e, fmaxf(-104.0f, d), dot);
    }
    sum = tti_gpu_sum(sum);
    dot = tti_gpu_sum(dot);
    if (threadIdx.x == 0) {
        tti_cuda_softmax s = {top, 0.0f, 0.0, 0.0};
        if (l.column > 0) {
            s = l.states[row];
            double gap = (double)s.max - (double)top, shrink = exp(gap);
            s.dot = (s.dot + s.sum * gap) * shrink;
            s.sum *= shrink;
            s.max = top;
        }
        s.sum += (double)sum;
        s.dot += (double)dot;
        if (target >= l.column && target - l.column < l.columns) { s.target = z[target - l.column] * l.inv_temperature; }
        l.states[row] = s;
        if (l.column + l.columns == l.vocab) {
            double log_sum = log(s.sum);
            if (l.logprobs) { l.logprobs[row] = (float)((double)s.target - (double)s.max - log_sum); }
            if (l.entropy) { l.entropy[row] = (float)(log_sum - s.dot / s.sum); }
            if (l.lse) { l.lse[row] = (float)((double)s.max + log_sum); }
        }
    }
}
/* dz = inv_temperature (dlogp (1[target] - p) - dH p (log p + H)), over z in place. */
static __global__ void tti_gpu_logits_back(tti_cuda_logits l, size_t rows) {
    TTI_EACH_VALUE(i, rows * l.columns) {
        size_t row = i / l.columns, column = l.column + i % l.columns;
        float dlogp = l.dlogprobs ? l.dlogprobs[row] : 0.0f, dh = l.dentropy ? l.dentropy[row] : 0.0f, h = l.dentropy ? l.entropy[row] : 0.0f;
        float logp = l.z[i] * l.inv_temperature - l.lse[row];
        float dz = -expf(logp) * fmaf(dh, fmaxf(-104.0f, logp) + h, dlogp);
        l.z[i] = l.inv_temperature * (column == (size_t)l.targets[row] ? dz + dlogp : dz);
    }
}
static void tti_cuda_logits_gemm(tt_gemm_args *g, const tt_logprobs_args *a, float *z, size_t row, size_t rows, size_t column, size_t columns) {
    memset(g, 0, sizeof *g);
    g->m = (int)rows;
    g->n = g->ldc = (int)columns;
    g->k = g->lda = g->ldb = a->dim;
    g->transpose_b = 1;
    g->a = a->x + row * (size_t)a->dim;
    g->b = a->w + column * (size_t)a->dim;
    g->c = z;
}
/* Scratch memory, and what all blocks share. */
static tt_status tti_cuda_logits_block(tt_context *ctx, const tt_logprobs_args *a, tti_cuda_logits *l) {
    size_t rows = (size_t)a->n < TTI_CUDA_VOCAB_ROWS ? (size_t)a->n : TTI_CUDA_VOCAB_ROWS, columns = (size_t)a->vocab < TTI_CUDA_VOCAB_BLOCK ? (size_t)a->vocab : TTI_CUDA_VOCAB_BLOCK;
    memset(l, 0, sizeof *l);
    l->vocab = (size_t)a->vocab;
    l->inv_temperature = a->inv_temperature;
    l->z = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_LOGITS, rows * columns * sizeof(float));
    l->states = l->z ? (tti_cuda_softmax *)tti_cuda_scratch(ctx, TTI_SCRATCH_STATES, rows * sizeof(tti_cuda_softmax)) : NULL;
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
static tt_status tti_cuda_logprobs_forward(tt_context *ctx, const tt_logprobs_args *a) {
    size_t n = (size_t)a->n, vocab = (size_t)a->vocab, row, rows, column;
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_status status = TT_OK;
    tt_gemm_args g;
    tti_cuda_logits l;
    if (n == 0) { return TT_OK; }
    if (tti_cuda_logits_block(ctx, a, &l) != TT_OK) { return TT_ERR_MEM; }
    for (row = 0; row < n; row += rows) {
        rows = n - row < TTI_CUDA_VOCAB_ROWS ? n - row : TTI_CUDA_VOCAB_ROWS;
        tti_cuda_logits_rows(&l, a, row);
        for (column = 0; column < vocab; column += l.columns) {
            l.column = column;
            l.columns = l.stride = vocab - column < TTI_CUDA_VOCAB_BLOCK ? vocab - column : TTI_CUDA_VOCAB_BLOCK;
            tti_cuda_logits_gemm(&g, a, l.z, row, rows, column, l.columns);
            status = tti_cuda_gemm(ctx, &g);
            if (status != TT_OK) { return status; }
            TTI_LAUNCH(cuda, tti_gpu_logits_scan, (unsigned)rows, TTI_CUDA_THREADS, 0, l);
        }
    }
    return tti_cuda_launched(ctx, "logits_scan");
}
static tt_status tti_cuda_logprobs_backward(tt_context *ctx, const tt_logprobs_args *a) {
    size_t n = (size_t)a->n, vocab = (size_t)a->vocab, row, rows, column;
    tti_cuda *cuda = tti_cuda_of(ctx);
    tt_status status = TT_OK;
    tt_gemm_args g;
    tti_cuda_logits l;
    if (a->dentropy && !a->entropy) { return tt_fail(ctx, TT_ERR_ARG, "logprobs_backward: dentropy without entropy"); }
    if (n == 0) { return TT_OK; }
    if (tti_cuda_logits_block(ctx, a, &l) != TT_OK) { return TT_ERR_MEM; }
    for (row = 0; row < n && status == TT_OK; row += rows) {
        rows = n - row < TTI_CUDA_VOCAB_ROWS ? n - row : TTI_CUDA_VOCAB_ROWS;
        tti_cuda_logits_rows(&l, a, row);
        for (column = 0; column < vocab && status == TT_OK; column += l.columns) {
            l.column = column;
            l.columns = l.stride = vocab - column < TTI_CUDA_VOCAB_BLOCK ? vocab - column : TTI_CUDA_VOCAB_BLOCK;
            tti_cuda_logits_gemm(&g, a, l.z, row, rows, column, l.columns);
            status = tti_cuda_gemm(ctx, &g);
            if (status != TT_OK) { return status; }
            TTI_LAUNCH(cuda, tti_gpu_logits_back, tti_cuda_grid(cuda, rows * l.columns), TTI_CUDA_THREADS, 0, l, rows);
            status = tti_cuda_launched(ctx, "logits_back");
            g.a = l.z;
            g.accumulate = 1;
            g.n = g.ldc = g.ldb = a->dim;
            g.lda = (int)l.columns;
            g.transpose_b = 0;
            if (a->dx && status == TT_OK) {          /* dx += dz w */
                g.k = (int)l.columns;
                g.c = a->dx + row * (size_t)a->dim;
                status = tti_cuda_gemm(ctx, &g);
            }
            if (a->dw && status == TT_OK) {          /* dw += dz' x */
                g.transpose_a = 1;
                g.m = (int)l.columns;
                g.k = (int)rows;
                g.b = a->x + row * (size_t)a->dim;
                g.c = a->dw + column * (size_t)a->dim;
                status = tti_cuda_gemm(ctx, &g);
            }
        }
    }
    return status;
}

/* ---- sampling ----
 * A block of threads for each row, each thread with a run of columns beside the others'. */
static __device__ int tti_gpu_min(int value) {
    for (int step = 16; step > 0; step /= 2) { value = min(value, __shfl_xor_sync(0xFFFFFFFFu, value, step)); }
    __shared__ int parts[32];
    if (threadIdx.x % 32 == 0) { parts[threadIdx.x / 32] = value; }
    __syncthreads();
    value = parts[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) { value = min(value, parts[i]); }
    __syncthreads();
    return value;
}
static __global__ void __launch_bounds__(256) tti_gpu_sample(tt_sample_args a) {
    __shared__ double sums[TTI_CUDA_THREADS];
    const float *z = a.logits + (size_t)blockIdx.x * (size_t)a.vocab;
    const int each = (a.vocab + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS, begin = min(a.vocab, (int)threadIdx.x * each), end = min(a.vocab, begin + each);
    float top = -INFINITY;
    double mass = 0, want = 0;
    int token = INT_MAX, last = -1, i;      /* last: of some probability */
    for (i = (int)threadIdx.x; i < a.vocab; i += TTI_CUDA_THREADS) { top = fmaxf(top, z[i]); }
    top = tti_gpu_max(top);
    if (a.greedy) {
        for (i = end - 1; i >= begin; i--) { if (z[i] == top) { token = i; } }
    } else {
        for (i = begin; i < end; i++) { mass += (double)expf((z[i] - top) * a.inv_temperature); }
        sums[threadIdx.x] = mass;
        __syncthreads();
        for (i = 0; i < TTI_CUDA_THREADS; i++) { want += sums[i]; }
        want *= a.u[blockIdx.x];
        for (mass = 0, i = 0; i < (int)threadIdx.x; i++) { mass += sums[i]; }
        for (i = begin; i < end && token == INT_MAX; i++) {      /* the first thread in whose run the mass is reached has it */
            double weight = (double)expf((z[i] - top) * a.inv_temperature);
            mass += weight;
            if (weight > 0) { last = i; }
            if (weight > 0 && mass > want) { token = i; }
        }
    }
    token = tti_gpu_min(token);
    last = -tti_gpu_min(-last);
    if (threadIdx.x == 0) { a.tokens[blockIdx.x] = token < a.vocab ? token : max(last, 0); }
}
static tt_status tti_cuda_sample(tt_context *ctx, const tt_sample_args *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t vocab = (size_t)a->vocab;
    tti_cuda_logits l = TT_INIT;
    if (a->n <= 0) { return TT_OK; }
    l.states = (tti_cuda_softmax *)tti_cuda_scratch(ctx, TTI_SCRATCH_STATES, (size_t)a->n * sizeof *l.states);
    if (!l.states) { return TT_ERR_MEM; }
    TTI_LAUNCH(cuda, tti_gpu_sample, (unsigned)a->n, TTI_CUDA_THREADS, 0, *a);
    l.stride = l.vocab = vocab;
    l.inv_temperature = a->inv_temperature;
    l.targets = a->tokens;
    l.logprobs = a->logprobs;
    for (l.column = 0; l.column < vocab; l.column += l.columns) {      /* in the blocks of logprobs_forward, for the same bits */
        l.columns = vocab - l.column < TTI_CUDA_VOCAB_BLOCK ? vocab - l.column : TTI_CUDA_VOCAB_BLOCK;
        l.z = (float *)(uintptr_t)a->logits + l.column;
        TTI_LAUNCH(cuda, tti_gpu_logits_scan, (unsigned)a->n, TTI_CUDA_THREADS, 0, l);
    }
    return tti_cuda_launched(ctx, "sample");
}

/* ---- rows ---- */
static __global__ void tti_gpu_gather_rows(float *y, const float *x, const int32_t *rows, size_t n, size_t dim) {
    TTI_EACH_VALUE(i, n * dim) { y[i] = x[(size_t)rows[i / dim] * dim + i % dim]; }
}
static __global__ void tti_gpu_scatter_rows(float *y, const float *x, const int32_t *rows, size_t n, size_t dim) {
    TTI_EACH_VALUE(i, n * dim) { y[(size_t)rows[i / dim] * dim + i % dim] = x[i]; }
}
/* next[i]: the next j > i with the same row, or n; later[j] = 1 if j is the next of some i. A warp for each i. */
static __global__ void tti_gpu_chain_rows(int32_t *next, int32_t *later, const int32_t *rows, int n) {
    int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)(threadIdx.x % 32), found = n;
    for (int j0 = i + 1; j0 < n && found == n; j0 += 32) {
        unsigned hits = __ballot_sync(0xFFFFFFFFu, j0 + lane < n && rows[j0 + lane] == rows[i]);
        if (hits) { found = j0 + __ffs((int)hits) - 1; }
    }
    if (i < n && lane == 0) {
        next[i] = found;
        if (found < n) { later[found] = 1; }
    }
}
/* The first of each row's occurrences adds them all, in order. */
static __global__ void tti_gpu_add_rows(float *dx, const float *dy, const int32_t *rows, const int32_t *next, const int32_t *later, int n, size_t dim) {
    int i = (int)blockIdx.x;
    size_t d = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (later[i] || d >= dim) { return; }
    float *to = dx + (size_t)rows[i] * dim + d, sum = *to;
    for (; i < n; i = next[i]) { sum += dy[(size_t)i * dim + d]; }
    *to = sum;
}
static tt_status tti_cuda_gather_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n, int dim) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_gather_rows, (size_t)n * (size_t)dim, y, x, rows, (size_t)n, (size_t)dim);
}
static tt_status tti_cuda_scatter_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n, int dim) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_scatter_rows, (size_t)n * (size_t)dim, y, x, rows, (size_t)n, (size_t)dim);
}
static tt_status tti_cuda_scatter_add_rows(tt_context *ctx, float *dx, const float *dy, const int32_t *rows, int n, int dim) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    int32_t *next;
    if (n <= 0 || dim <= 0) { return TT_OK; }
    next = (int32_t *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, 2 * (size_t)n * sizeof *next);
    if (!next) { return TT_ERR_MEM; }
    if (tti_cuda_zero(ctx, next + n, (size_t)n * sizeof *next) != TT_OK) { return TT_ERR_DEVICE; }
    TTI_LAUNCH(cuda, tti_gpu_chain_rows, ((unsigned)n + 7) / 8, TTI_CUDA_THREADS, 0, next, next + n, rows, n);
    TTI_LAUNCH(cuda, tti_gpu_add_rows, dim3((unsigned)n, ((unsigned)dim + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS), TTI_CUDA_THREADS, 0, dx, dy, rows, next, next + n, n, (size_t)dim);
    return tti_cuda_launched(ctx, "add_rows");
}
static __global__ void tti_gpu_columns(float *y, const float *x, size_t n, size_t cols, size_t begin, size_t count) {
    TTI_EACH_VALUE(i, n * count) { y[i] = x[i / count * cols + begin + i % count]; }
}
static __global__ void tti_gpu_columns_back(float *dx, const float *dy, size_t n, size_t cols, size_t begin, size_t count) {
    TTI_EACH_VALUE(i, n * count) { dx[i / count * cols + begin + i % count] += dy[i]; }
}
static tt_status tti_cuda_columns(tt_context *ctx, float *y, const float *x, int n, int cols, int begin, int count) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_columns, (size_t)n * (size_t)count, y, x, (size_t)n, (size_t)cols, (size_t)begin, (size_t)count);
}
static tt_status tti_cuda_columns_backward(tt_context *ctx, float *dx, const float *dy, int n, int cols, int begin, int count) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_columns_back, (size_t)n * (size_t)count, dx, dy, (size_t)n, (size_t)cols, (size_t)begin, (size_t)count);
}

/* ---- norms ----   y = x r w,  r = 1 / sqrt(mean(x^2) + eps)   (RMSNorm, Zhang and Sennrich 2019)
 *                   y = (x - mean) r w + b,  r = 1 / sqrt(var + eps)   (LayerNorm, Ba et al. 2016)
 * A block of threads for each row. Sums over rows are made in two rounds: each chunk of TTI_CHUNK_ROWS rows by itself, then
 * the chunks in order. */
typedef struct tti_cuda_norm {
    size_t n, dim;
    float eps;
    const float *x, *w, *b, *dy;
    float *y, *mean, *rstd, *dx, *dw, *db;
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
        float *dx = a.dx + row * a.dim, mean = a.mean ? a.mean[row] : 0.0f, r = a.rstd[row], sum = 0.0f, dot = 0.0f;
        TTI_EACH_COLUMN(i, a.dim) {
            float g = dy[i] * a.w[i];
            sum += g;
            dot = fmaf(g, (x[i] - mean) * r, dot);
        }
        sum = a.mean ? tti_gpu_sum(sum) / (float)a.dim : 0.0f;
        dot = tti_gpu_sum(dot) / (float)a.dim;
        TTI_EACH_COLUMN(i, a.dim) { dx[i] = fmaf(r, dy[i] * a.w[i] - sum - (x[i] - mean) * r * dot, dx[i]); }
    }
}
/* dw = sum over rows of dy n,  db = of dy: a block makes 32 columns of one chunk of rows. parts: [2][chunks][dim]. x NULL: db only. */
#define TTI_CHUNK_ROWS 256
static __global__ void tti_gpu_norm_dw(tti_cuda_norm a, float *parts) {
    __shared__ float dw_parts[8][32], db_parts[8][32];
    const size_t column = (size_t)blockIdx.x * 32 + threadIdx.x, chunk = blockIdx.y, end = min(a.n, (chunk + 1) * TTI_CHUNK_ROWS);
    float dw = 0.0f, db = 0.0f;
    for (size_t row = chunk * TTI_CHUNK_ROWS + threadIdx.y; row < end && column < a.dim; row += 8) {
        float dy = a.dy[row * a.dim + column];
        if (a.x) { dw = fmaf(dy, (a.x[row * a.dim + column] - (a.mean ? a.mean[row] : 0.0f)) * a.rstd[row], dw); }
        db += dy;
    }
    dw_parts[threadIdx.y][threadIdx.x] = dw;
    db_parts[threadIdx.y][threadIdx.x] = db;
    __syncthreads();
    if (threadIdx.y != 0 || column >= a.dim) { return; }
    for (int i = 1; i < 8; i++) { dw += dw_parts[i][threadIdx.x]; db += db_parts[i][threadIdx.x]; }
    parts[chunk * a.dim + column] = dw;
    parts[(gridDim.y + chunk) * a.dim + column] = db;
}
static __global__ void tti_gpu_add_chunks(float *to, const float *parts, size_t chunks, size_t dim) {
    TTI_EACH_VALUE(i, dim) {
        float sum = 0.0f;
        for (size_t chunk = 0; chunk < chunks; chunk++) { sum += parts[chunk * dim + i]; }
        to[i] += sum;
    }
}
/* A short row is one warp's work. */
static unsigned tti_cuda_row_threads(size_t dim) { return dim <= 256 ? 32 : TTI_CUDA_THREADS; }
static unsigned tti_cuda_row_grid(size_t n) { return (unsigned)(n < ((size_t)1 << 30) ? n : (size_t)1 << 30); }
static tt_status tti_cuda_norm_forward(tt_context *ctx, const tti_cuda_norm *a) {
    if (a->n == 0) { return TT_OK; }
    TTI_LAUNCH(tti_cuda_of(ctx), tti_gpu_norm, tti_cuda_row_grid(a->n), tti_cuda_row_threads(a->dim), 0, *a);
    return tti_cuda_launched(ctx, "norm");
}
static tt_status tti_cuda_norm_dw(tt_context *ctx, const tti_cuda_norm *a) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    size_t chunks = (a->n + TTI_CHUNK_ROWS - 1) / TTI_CHUNK_ROWS;
    float *parts = (float *)tti_cuda_scratch(ctx, TTI_SCRATCH_SUMS, 2 * chunks * a->dim * sizeof(float));
    if (!parts) { return TT_ERR_MEM; }
    if (chunks > 65535) { return tt_fail(ctx, TT_ERR_ARG, "cuda: %lu rows, expected at most %lu", (unsigned long)a->n, 65535ul * TTI_CHUNK_ROWS); }
    TTI_LAUNCH(cuda, tti_gpu_norm_dw, dim3((unsigned)((a->dim + 31) / 32), (unsigned)chunks), dim3(32, 8), 0, *a, parts);
    if (a->dw) { TTI_LAUNCH(cuda, tti_gpu_add_chunks, tti_cuda_grid(cuda, a->dim), TTI_CUDA_THREADS, 0, a->dw, parts, chunks, a->dim); }
    if (a->db) { TTI_LAUNCH(cuda, tti_gpu_add_chunks, tti_cuda_grid(cuda, a->dim), TTI_CUDA_THREADS, 0, a->db, parts + chunks * a->dim, chunks, a->dim); }
    return tti_cuda_launched(ctx, "norm_dw");
}
static tt_status tti_cuda_norm_backward(tt_context *ctx, const tti_cuda_norm *a) {
    if (a->n == 0) { return TT_OK; }
    if (a->dx) { TTI_LAUNCH(tti_cuda_of(ctx), tti_gpu_norm_dx, tti_cuda_row_grid(a->n), tti_cuda_row_threads(a->dim), 0, *a); }
    if (a->dw || a->db) { return tti_cuda_norm_dw(ctx, a); }
    return tti_cuda_launched(ctx, "norm_dx");
}
static tt_status tti_cuda_rmsnorm(tt_context *ctx, float *y, float *rstd, const float *x, const float *w, int n, int dim, float eps) {
    tti_cuda_norm a = {(size_t)n, (size_t)dim, eps, x, w, NULL, NULL, y, NULL, rstd, NULL, NULL, NULL};
    return tti_cuda_norm_forward(ctx, &a);
}
static tt_status tti_cuda_layernorm(tt_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, int n, int dim, float eps) {
    tti_cuda_norm a = {(size_t)n, (size_t)dim, eps, x, w, b, NULL, y, mean, rstd, NULL, NULL, NULL};
    return tti_cuda_norm_forward(ctx, &a);
}
static tt_status tti_cuda_layernorm_backward(tt_context *ctx, float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                                             const float *mean, const float *rstd, int n, int dim) {
    tti_cuda_norm a = {(size_t)n, (size_t)dim, 0, x, w, NULL, dy, NULL, (float *)(uintptr_t)mean, (float *)(uintptr_t)rstd, dx, dw, db};
    return tti_cuda_norm_backward(ctx, &a);
}
static tt_status tti_cuda_rmsnorm_backward(tt_context *ctx, float *dx, float *dw, const float *dy, const float *x, const float *w, const float *rstd, int n, int dim) {
    return tti_cuda_layernorm_backward(ctx, dx, dw, NULL, dy, x, w, NULL, rstd, n, dim);
}
static tt_status tti_cuda_bias_backward(tt_context *ctx, float *db, const float *dy, int n, int dim) {
    tti_cuda_norm a = {(size_t)n, (size_t)dim, 0, NULL, NULL, NULL, dy, NULL, NULL, NULL, NULL, NULL, db};
    return tti_cuda_norm_backward(ctx, &a);
}

/* ---- rotary embedding (Su et al. 2021, arXiv 2104.09864, halves as in Llama) ----
 * y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin;  the inverse turns by -angle and adds to y. */
static __global__ void tti_gpu_rope(float *y, const float *x, const float *cos_table, const float *sin_table, const int32_t *positions, size_t n, size_t heads, size_t half, int inverse) {
    TTI_EACH_VALUE(i, n * heads * half) {
        size_t d = i % half, at = i / half * 2 * half + d, angle = (size_t)positions[i / half / heads] * half + d;
        float x1 = x[at], x2 = x[at + half], cosine = cos_table[angle], sine = inverse ? -sin_table[angle] : sin_table[angle];
        float y1 = x1 * cosine - x2 * sine, y2 = x2 * cosine + x1 * sine;
        y[at] = inverse ? y[at] + y1 : y1;
        y[at + half] = inverse ? y[at + half] + y2 : y2;
    }
}
static tt_status tti_cuda_rope(tt_context *ctx, float *y, const float *x, const float *cos_table, const float *sin_table, const int32_t *positions,
                               int n, int heads, int head_dim, int inverse) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_rope, (size_t)n * (size_t)heads * (size_t)(head_dim / 2), y, x, cos_table, sin_table, positions, (size_t)n, (size_t)heads, (size_t)(head_dim / 2), inverse);
}

/* ---- elementwise ---- */
static __global__ void tti_gpu_unary(int op, float *y, const float *x_all, size_t n, float p0, float p1) {
    TTI_EACH_VALUE(i, n) { y[i] = tti_gpu_value(op, x_all[i], p0, p1); }
}
static __global__ void tti_gpu_unary_back(int op, float *dx_all, const float *dy_all, const float *x_all, const float *y_all, size_t n, float p0, float p1) {
    TTI_EACH_VALUE(i, n) {
        float dy = dy_all[i], x = x_all[i], y = y_all[i], dx, s;
        switch (op) {
        case TT_NEG: dx = -dy; break;
        case TT_EXP: dx = dy * y; break;
        case TT_LOG: dx = dy / x; break;
        case TT_TANH: dx = dy * (1.0f - y * y); break;
        case TT_CLAMP: dx = x < p0 || p1 < x ? 0.0f : dy; break;
        case TT_SCALE: dx = dy * p0; break;
        case TT_GELU_TANH:
            s = tti_gpu_gelu_sigmoid(x);
            dx = dy * (s + x * s * (1.0f - s) * 1.59576912f * fmaf(0.134145f * x, x, 1.0f));
            break;
        default:      /* Phi(x) + x phi(x) */
            dx = dy * (tti_gpu_normal_cdf(x) + x * 0.398942280f * expf(-0.5f * x * x));
            break;
        }
        dx_all[i] += dx;
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
        default: y[i] = a * tti_gpu_sigmoid(a) * b; break;
        }
    }
}
/* da and db may be NULL. Of two equal values the minimum and maximum are a. */
static __global__ void tti_gpu_binary_back(int op, float *da_all, float *db_all, const float *dy_all, const float *a_all, const float *b_all, size_t n) {
    TTI_EACH_VALUE(i, n) {
        float a = a_all[i], b = b_all[i], dy = dy_all[i], da, db, s;
        switch (op) {
        case TT_ADD: da = dy; db = dy; break;
        case TT_SUB: da = dy; db = -dy; break;
        case TT_MUL: da = dy * b; db = dy * a; break;
        case TT_DIV: da = dy / b; db = -dy * (a / b) / b; break;
        case TT_MINIMUM: da = b < a ? 0.0f : dy; db = b < a ? dy : 0.0f; break;
        case TT_MAXIMUM: da = a < b ? 0.0f : dy; db = a < b ? dy : 0.0f; break;
        case TT_LESS: da = db = 0.0f; break;
        default: s = tti_gpu_sigmoid(a); da = dy * b * s * fmaf(a, 1.0f - s, 1.0f); db = dy * a * s; break;
        }
        if (da_all) { da_all[i] += da; }
        if (db_all) { db_all[i] += db; }
    }
}
static __global__ void tti_gpu_where(float *y, const float *condition, const float *a, const float *b, size_t n) {
    TTI_EACH_VALUE(i, n) { y[i] = condition[i] != 0.0f ? a[i] : b[i]; }
}
static __global__ void tti_gpu_where_back(float *da, float *db, const float *dy, const float *condition, size_t n) {
    TTI_EACH_VALUE(i, n) {
        float *to = condition[i] != 0.0f ? da : db;
        if (to) { to[i] += dy[i]; }
    }
}
static __global__ void tti_gpu_axpy(float *y, const float *x, float alpha, size_t n) {
    TTI_EACH_VALUE(i, n) { y[i] = fmaf(alpha, x[i], y[i]); }
}
/* AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) */
static __global__ void tti_gpu_adamw(tt_adamw_args a) {
    TTI_EACH_VALUE(i, a.n) {
        float p = a.p[i], g = a.g[i] * a.grad_scale;
        float m = fmaf(a.beta1, a.m[i], (1.0f - a.beta1) * g), v = fmaf(a.beta2, a.v[i], (1.0f - a.beta2) * g * g);
        float step = m / a.correction1 / (sqrtf(v / a.correction2) + a.eps);
        a.m[i] = m;
        a.v[i] = v;
        a.p[i] = p - a.lr * (step + a.weight_decay * p);
    }
}
static tt_status tti_cuda_unary(tt_context *ctx, tt_unary op, float *y, const float *x, size_t n, float p0, float p1) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_unary, n, (int)op, y, x, n, p0, p1);
}
static tt_status tti_cuda_unary_backward(tt_context *ctx, tt_unary op, float *dx, const float *dy, const float *x, const float *y, size_t n, float p0, float p1) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_unary_back, n, (int)op, dx, dy, x, y, n, p0, p1);
}
static tt_status tti_cuda_binary(tt_context *ctx, tt_binary op, float *y, const float *a, const float *b, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_binary, n, (int)op, y, a, b, n);
}
static tt_status tti_cuda_binary_backward(tt_context *ctx, tt_binary op, float *da, float *db, const float *dy, const float *a, const float *b, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_binary_back, n, (int)op, da, db, dy, a, b, n);
}
static tt_status tti_cuda_where(tt_context *ctx, float *y, const float *condition, const float *a, const float *b, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_where, n, y, condition, a, b, n);
}
static tt_status tti_cuda_where_backward(tt_context *ctx, float *da, float *db, const float *dy, const float *condition, size_t n) {
    TTI_LAUNCH_VALUES(ctx, tti_gpu_where_back, n, da, db, dy, condition, n);
}
static tt_status tti_cuda_axpy(tt_context *ctx, float *y, const float *x, float alpha, size_t n) { TTI_LAUNCH_VALUES(ctx, tti_gpu_axpy, n, y, x, alpha, n); }
static tt_status tti_cuda_adamw(tt_context *ctx, const tt_adamw_args *args) { TTI_LAUNCH_VALUES(ctx, tti_gpu_adamw, args->n, *args); }

/* ---- shapes ---- */
typedef struct tti_cuda_shapes { size_t big[4], steps[4], n; } tti_cuda_shapes;      /* steps: of small along each axis of big, 0 where it broadcasts */
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
        for (int axis = 3; axis >= 0; axis--) { from += rest % s.big[axis] * s.steps[axis]; rest /= s.big[axis]; }
        y[i] = accumulate ? y[i] + x[from] : x[from];
    }
}
/* Sums in double. A group of `threads` (1 or a block) makes one element of y: it walks, in order, over the axes that
 * small has not. */
static __global__ void tti_gpu_reduce(float *y, const float *x, tti_cuda_shapes s, size_t outputs, size_t terms, int threads, int accumulate) {
    size_t output = threads == 1 ? (size_t)blockIdx.x * blockDim.x + threadIdx.x : blockIdx.x, first = 0, rest = output, step = 1;
    double sum = 0;
    for (int axis = 3; axis >= 0; axis--) {
        if (s.steps[axis]) { first += rest % s.big[axis] * step; rest /= s.big[axis]; }
        step *= s.big[axis];
    }
    for (size_t term = threads == 1 ? 0 : threadIdx.x; term < terms && output < outputs; term += (size_t)threads) {
        size_t at = first;
        rest = term;
        step = 1;
        for (int axis = 3; axis >= 0; axis--) {
            if (!s.steps[axis]) { at += rest % s.big[axis] * step; rest /= s.big[axis]; }
            step *= s.big[axis];
        }
        sum += (double)x[at];
    }
    if (threads > 1) { sum = tti_gpu_sum(sum); }
    if (output < outputs && (threads == 1 || threadIdx.x == 0)) { y[output] = (float)(accumulate ? (double)y[output] + sum : sum); }
}
static tt_status tti_cuda_broadcast(tt_context *ctx, float *y, const float *x, const int *small_shape, const int *big_shape, int accumulate) {
    tti_cuda_shapes s = tti_cuda_shapes_of(small_shape, big_shape);
    TTI_LAUNCH_VALUES(ctx, tti_gpu_broadcast, s.n, y, x, s, accumulate);
}
static tt_status tti_cuda_reduce(tt_context *ctx, float *y, const float *x, const int *small_shape, const int *big_shape, int accumulate) {
    tti_cuda *cuda = tti_cuda_of(ctx);
    tti_cuda_shapes s = tti_cuda_shapes_of(small_shape, big_shape);
    size_t outputs = (size_t)small_shape[0] * (size_t)small_shape[1] * (size_t)small_shape[2] * (size_t)small_shape[3];
    size_t terms = outputs ? s.n / outputs : 0, most = (size_t)1 << 31;
    int threads = terms <= 32 ? 1 : TTI_CUDA_THREADS;
    size_t grid = threads == 1 ? (outputs + TTI_CUDA_THREADS - 1) / TTI_CUDA_THREADS : outputs;
    if (outputs == 0) { return TT_OK; }
    if (grid >= most) { return tt_fail(ctx, TT_ERR_ARG, "reduce: %lu sums, expected below %lu", (unsigned long)outputs, (unsigned long)most); }
    TTI_LAUNCH(cuda, tti_gpu_reduce, (unsigned)grid, TTI_CUDA_THREADS, 0, y, x, s, outputs, terms, threads, accumulate);
    return tti_cuda_launched(ctx, "reduce");
}
/* Two rounds: a block sums TTI_CHUNK_VALUES values, one block sums the blocks. */
#define TTI_CHUNK_VALUES ((size_t)1 << 15)
static __global__ void tti_gpu_sum_squares(double *parts, const float *x, size_t n) {
    size_t end = min(n, (blockIdx.x + (size_t)1) * TTI_CHUNK_VALUES);
    double sum = 0;
    for (size_t i = blockIdx.x * TTI_CHUNK_VALUES + threadIdx.x; i < end; i += blockDim.x) { sum += (double)x[i] * (double)x[i]; }
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

/* ---- casts: to the nearest, ties to even ---- */
static __device__ uint16_t tti_gpu_to_bf16(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) { return (uint16_t)((bits >> 16) | 0x40u); }      /* stays a NaN */
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
static __device__ uint16_t tti_gpu_to_f16(float x) {
    uint32_t bits = __float_as_uint(x), sign = (bits >> 16) & 0x8000u, half;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) { return (uint16_t)(sign | 0x7E00u); }
    if (bits >= 0x477FF000u) { return (uint16_t)(sign | 0x7C00u); }                            /* rounds beyond 65504 */
    if (bits < 0x38800000u) { half = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3F000000u; }      /* denormal: the sum rounds at 2^-24 */
    else { half = (bits - 0x38000000u + 0xFFFu + ((bits >> 13) & 1u)) >> 13; }
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
    TTI_EACH_VALUE(i, n) { to[i] = bf16 ? __uint_as_float((uint32_t)from[i] << 16) : tti_gpu_from_f16(from[i]); }
}
static tt_status tti_cuda_cast(tt_context *ctx, void *to, tt_dtype to_type, const void *from, tt_dtype from_type, size_t n) {
    if (to_type == from_type) { return tti_cuda_copy(ctx, to, from, n * (to_type == TT_BF16 || to_type == TT_F16 ? 2 : 4)); }
    if (from_type == TT_F32 && (to_type == TT_BF16 || to_type == TT_F16)) { TTI_LAUNCH_VALUES(ctx, tti_gpu_narrow, n, (uint16_t *)to, (const float *)from, n, to_type == TT_BF16); }
    if (to_type == TT_F32 && (from_type == TT_BF16 || from_type == TT_F16)) { TTI_LAUNCH_VALUES(ctx, tti_gpu_widen, n, (float *)to, (const uint16_t *)from, n, from_type == TT_BF16); }
    return tt_fail(ctx, TT_ERR_ARG, "cast: from type %d to type %d, expected float to or from bf16 or f16", (int)from_type, (int)to_type);
}

/* ---- the table, one for each device; they differ only in the number that config points to ---- */
#define TTI_CUDA_TABLE(device) {                                                                                                          \
        "cuda", 0, (void *)(uintptr_t)&numbers[device], tti_cuda_open, tti_cuda_close,                                                    \
        tti_cuda_alloc, tti_cuda_free, tti_cuda_upload, tti_cuda_download, tti_cuda_copy, tti_cuda_zero, tti_cuda_sync,                   \
        tti_cuda_gemm, NULL, tti_cuda_attention_forward, tti_cuda_attention_backward, NULL, NULL, tti_cuda_logprobs_forward, tti_cuda_logprobs_backward,    \
        tti_cuda_gather_rows, tti_cuda_scatter_add_rows, tti_cuda_scatter_rows, tti_cuda_columns, tti_cuda_columns_backward,              \
        tti_cuda_rmsnorm, tti_cuda_rmsnorm_backward, tti_cuda_layernorm, tti_cuda_layernorm_backward, tti_cuda_rope,                      \
        tti_cuda_unary, tti_cuda_unary_backward, tti_cuda_binary, tti_cuda_binary_backward, tti_cuda_where, tti_cuda_where_backward,      \
        tti_cuda_broadcast, tti_cuda_reduce, tti_cuda_bias_backward, tti_cuda_axpy, tti_cuda_sum_squares, tti_cuda_adamw, tti_cuda_cast,  \
        tti_cuda_sample, tti_cuda_step_begin, tti_cuda_step_end                                                                           \
    }
extern "C" const tt_backend *tt_cuda_backend(int device) {
    static const int numbers[TTI_CUDA_DEVICES + 1] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, -1};
    static const tt_backend tables[TTI_CUDA_DEVICES + 1] = {
        TTI_CUDA_TABLE(0), TTI_CUDA_TABLE(1), TTI_CUDA_TABLE(2), TTI_CUDA_TABLE(3), TTI_CUDA_TABLE(4), TTI_CUDA_TABLE(5),
        TTI_CUDA_TABLE(6), TTI_CUDA_TABLE(7), TTI_CUDA_TABLE(8), TTI_CUDA_TABLE(9), TTI_CUDA_TABLE(10), TTI_CUDA_TABLE(11),
        TTI_CUDA_TABLE(12), TTI_CUDA_TABLE(13), TTI_CUDA_TABLE(14), TTI_CUDA_TABLE(15), TTI_CUDA_TABLE(16)
    };
    return &tables[device >= 0 && device < TTI_CUDA_DEVICES ? device : TTI_CUDA_DEVICES];
}
extern "C" tt_status tt_cuda_set(tt_context *ctx, tt_cuda_math math, tt_cuda_kernels kernels) {
    const char *name = tt_backend_get(ctx)->name;
    tti_cuda *cuda = (tti_cuda *)tt_backend_state(ctx);
    if (!cuda || strcmp(name, "cuda") != 0) { return tt_fail(ctx, TT_ERR_ARG, "tt_cuda_set: the context's backend is %s, expected an open cuda", name); }
    if (math < TT_CUDA_F32 || math > TT_CUDA_BF16 || kernels < TT_CUDA_FAST || kernels > TT_CUDA_NAIVE) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_cuda_set: math is %d and kernels %d, expected 0..2 each", (int)math, (int)kernels);
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

/* ---- several GPUs ----
 * tt_reducer's hook over NCCL. In order, as over MPI: each rank is sent its slice of everyone's data, sums it as a binary
 * tree of ranks, and hands it to the others; that moves 2 (ranks - 1) / ranks of the data per rank. */
#ifdef TT_CUDA_NCCL
#ifndef TTI_CUDA_HOST
#include <nccl.h>
#define TTI_NCCL_PIECE ((size_t)1 << 24)    /* floats on their way at once */
#endif
struct tt_nccl { tt_context *ctx; ncclComm_t comm; int rank, size, ordered; float *slices; };

static tt_status tti_nccl_check(tt_context *ctx, ncclResult_t result, const char *what) {
    return result == ncclSuccess ? TT_OK : tt_fail(ctx, TT_ERR_DEVICE, "nccl: %s: %s", what, ncclGetErrorString(result));
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
    if (c->comm) { tti_cuda_sync(c->ctx); ncclCommDestroy(c->comm); }
    tt_free(c->ctx, c, 1, sizeof *c);
}
extern "C" tt_nccl *tt_nccl_create(tt_context *ctx, const char id[TT_NCCL_ID_BYTES], int rank, int world_size, int ordered) {
    ncclUniqueId unique;
    tt_nccl *c;
    if (strcmp(tt_backend_get(ctx)->name, "cuda") != 0 || !tt_backend_state(ctx)) {
        tt_fail(ctx, TT_ERR_ARG, "tt_nccl_create: the context's backend is %s, expected an open cuda", tt_backend_get(ctx)->name);
        return NULL;
    }
    if (world_size < 1 || rank < 0 || rank >= world_size || (size_t)world_size > TTI_NCCL_PIECE) {
        tt_fail(ctx, TT_ERR_ARG, "tt_nccl_create: rank is %d of world_size %d, expected 0 <= rank < world_size", rank, world_size);
        return NULL;
    }
    c = (tt_nccl *)tt_alloc(ctx, 1, sizeof *c);
    if (!c) { return NULL; }
    c->ctx = ctx;
    c->rank = rank;
    c->size = world_size;
    c->ordered = ordered;
    memcpy(&unique, id, sizeof unique);
    tti_cuda_of(ctx);                       /* makes the device current, which is where the communicator will live */
    if (ordered) { c->slices = (float *)tti_cuda_alloc(ctx, TTI_NCCL_PIECE * sizeof *c->slices); }
    if ((ordered && !c->slices) || tti_nccl_check(ctx, ncclCommInitRank(&c->comm, world_size, unique, rank), "communicator") != TT_OK) {
        tt_nccl_destroy(c);
        return NULL;
    }
    return c;
}
/* slices[begin] += slices[begin + 1 .. begin + count), each of n values. */
static tt_status tti_nccl_sum(tt_nccl *c, int begin, int count, size_t n) {
    int half = count % 2 ? count - 1 : count / 2;
    float *a = c->slices + (size_t)begin * n;
    tt_status status;
    if (count == 1) { return TT_OK; }
    status = tti_nccl_sum(c, begin, half, n);
    if (status == TT_OK) { status = tti_nccl_sum(c, begin + half, count - half, n); }
    return status == TT_OK ? tti_cuda_axpy(c->ctx, a, a + (size_t)half * n, 1, n) : status;
}
/* size slices of n values: mine of each rank to me, the sum of them to everyone. */
static tt_status tti_nccl_slices(tt_nccl *c, float *data, size_t n, cudaStream_t stream) {
    ncclResult_t result = ncclGroupStart();
    tt_status status;
    int r;
    for (r = 0; r < c->size && result == ncclSuccess; r++) {
        result = ncclSend(data + (size_t)r * n, n, ncclFloat, r, c->comm, stream);
        if (result == ncclSuccess) { result = ncclRecv(c->slices + (size_t)r * n, n, ncclFloat, r, c->comm, stream); }
    }
    status = tti_nccl_check(c->ctx, result, "exchange");
    result = ncclGroupEnd();                /* also after an error: a group must not stay open */
    if (status == TT_OK) { status = tti_nccl_check(c->ctx, result, "exchange"); }
    if (status == TT_OK) { status = tti_nccl_sum(c, 0, c->size, n); }
    return status == TT_OK ? tti_nccl_check(c->ctx, ncclAllGather(c->slices, data, n, ncclFloat, c->comm, stream), "gather") : status;
}
/* The last values, fewer than ranks: each rank sums them all. */
static tt_status tti_nccl_rest(tt_nccl *c, float *data, size_t n, cudaStream_t stream) {
    tt_status status = tti_nccl_check(c->ctx, ncclAllGather(data, c->slices, n, ncclFloat, c->comm, stream), "gather");
    if (status == TT_OK) { status = tti_nccl_sum(c, 0, c->size, n); }
    return status == TT_OK ? tti_cuda_copy(c->ctx, data, c->slices, n * sizeof *data) : status;
}
extern "C" tt_status tt_nccl_allreduce(void *nccl, float *data, size_t n) {
    tt_nccl *c = (tt_nccl *)nccl;
    cudaStream_t stream = tti_cuda_of(c->ctx)->stream;
    size_t size = (size_t)c->size, most = TTI_NCCL_PIECE / size, slice;
    tt_status status = TT_OK;
    if (!c->ordered) { return tti_nccl_check(c->ctx, ncclAllReduce(data, data, n, ncclFloat, ncclSum, c->comm, stream), "sum"); }
    for (; n >= size && status == TT_OK; data += slice * size, n -= slice * size) {
        slice = n / size < most ? n / size : most;
        status = tti_nccl_slices(c, data, slice, stream);
    }
    return status == TT_OK && n > 0 ? tti_nccl_rest(c, data, n, stream) : status;
}
#endif
