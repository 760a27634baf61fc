/* thinktuning.h - v0.2.0 - language models that learn to reason, in one C header
 *
 * A transformer, reverse-mode autograd, a BPE tokenizer, a sampler, GRPO, and ThinkTuning (RRV et al.,
 * EMNLP 2025, arXiv 2508.07616): a teacher of the student's own size reads some of its answers and continues
 * them with feedback; reinforcement learning on these guided rollouts teaches the student to check and
 * correct itself. C99 that also compiles as C++11. Needs the C library; CUDA is optional.
 * Licence: MIT, text at the end of the file.
 *
 * ---- use ----
 * In ONE source file
 *
 *     #define THINKTUNING_IMPLEMENTATION
 *     #include "thinktuning.h"        (before other headers, so that POSIX calls are visible under -std=c99)
 *
 * and in all others just the #include. Best it is a file of its own, tt.c, with these two lines and nothing
 * else: it takes up to half a minute at -O2, once, and an edit of the rest less than a second:
 *
 *     cc -O2 -c tt.c                  (once)
 *     cc -O2 app.c tt.o -lm           (after each edit; threads included, on POSIX)
 *
 * The fast kernels (AVX2, AVX-512 and its BF16, NEON) are compiled in by function attributes and chosen at
 * run time: no -march is needed (but -msimd128 for those of WebAssembly). In a shared library all else can be
 * hidden: with the same TT_API before the #include in every file,
 *
 *     #define TT_API __attribute__((visibility("default")))        (Windows: __declspec(dllexport))
 *     cc -O2 -fPIC -fvisibility=hidden -shared tt.c -o libtt.so -lm
 *
 * exports the tt_ functions and nothing else; without TT_API, -fvisibility=hidden leaves none.
 *
 * ---- a complete program: train a model on one sequence, then sample from it ----
 *
 *     #define THINKTUNING_IMPLEMENTATION
 *     #include "thinktuning.h"
 *     #include <stdio.h>
 *     int main(void) {
 *         static const int32_t tokens[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7}, ends[] = {0, 14};
 *         tt_context *ctx = tt_create(NULL);
 *         tt_model_config config = TT_INIT;
 *         tt_batch_desc text = TT_INIT;
 *         tt_request prompt = TT_INIT;
 *         tt_sampling greedy = TT_INIT;
 *         tt_completions out;
 *         tt_model *model;
 *         tt_optimizer *adamw;
 *         int step, i;
 *         config.vocab_size = 16;
 *         config.hidden_size = 32;
 *         config.num_hidden_layers = 2;
 *         config.num_attention_heads = 4;
 *         model = tt_model_create(ctx, &config, 1);
 *         adamw = tt_adamw_create(model, NULL);
 *         text.n_sequences = 1;
 *         text.tokens = tokens;
 *         text.offsets = ends;
 *         for (step = 0; step < 60; step++) {
 *             tt_tensor *logprobs = tt_model_logprobs(model, tt_batch_create(ctx, &text), 1, NULL);
 *             tt_backward(ctx, tt_neg(ctx, tt_mean(ctx, logprobs)));
 *             if (tt_optimizer_step(adamw, 1e-2f, NULL) != TT_OK) { break; }
 *             tt_step_reset(ctx);
 *         }
 *         prompt.prompt = tokens;
 *         prompt.prompt_length = 2;
 *         greedy.greedy = 1;
 *         greedy.max_new_tokens = 12;
 *         if (step < 60 || tt_generate(model, &prompt, 1, &greedy, &out) != TT_OK) {
 *             puts(tt_error(ctx));
 *             return 1;
 *         }
 *         for (i = 0; i < out.items[0].length; i++) { printf("%d ", (int)out.items[0].tokens[i]); }
 *         tt_completions_free(&out);
 *         tt_optimizer_destroy(adamw);
 *         tt_model_destroy(model);
 *         tt_destroy(ctx);
 *         return 0;
 *     }
 *
 * ---- the rules ----
 * Defaults  A zero in any _desc or _config field means the default that stands beside it.
 * Errors    Functions return tt_status or NULL; tt_error(ctx) says what, where and which value. An error
 *           while a graph is being built sticks until tt_step_reset: later ops return NULL quietly, and
 *           tt_backward, tt_eval and tt_optimizer_step report the first cause, so model code needs no check
 *           on each line. The error can still be read after tt_step_reset, and goes when the next step
 *           succeeds. Nothing here prints, exits or aborts, or changes signals and locale.
 * Memory    All memory comes through the allocator in tt_desc. What _create returns, _destroy frees: in any
 *           order, the context last. Tensors that ops return live until tt_step_reset. A failed allocation is
 *           an error like any other, and leaks nothing.
 * Threads   A context is used by one thread at a time; any number of contexts may run at once. Inside, a
 *           context has a team of n_threads POSIX threads; on other systems OpenMP's, where the compiler has
 *           it on.
 * Bits      A result does not depend on thread count, on what else is in a batch, on a sequence's slot, or on
 *           how a prompt was split between prefill and decoding. Log-probs of sampling equal those of
 *           training bit for bit, and a resumed run equals the one that was never interrupted. (Between
 *           kernel sets, see tt_kernel, results are close but not equal.)
 *
 * ---- macros ----
 * THINKTUNING_IMPLEMENTATION   compile the implementation here
 * TT_STATIC                    every function static: several independent copies in one program
 * TT_API                       your own linkage: what a shared library exports, see use
 * TT_NO_THREADS                everything on the calling thread
 * TT_OPENMP                    OpenMP's threads instead of a team of our own, for hosts that run on them
 *                              already
 * TT_HEADER_NAME               how the header includes itself for each kernel set, if you renamed the file;
 *                              default "thinktuning.h"
 * TT_ALLOW_FAST_MATH           accept -ffast-math, and lose the promise about bits
 * TT_MAX_FILE_BYTES            the largest file that is read whole; default 16 GiB (weights are mapped: no
 *                              limit)
 * TT_CUDA                      the program links tt_cuda.cu: where desc.backend is NULL, the environment's
 *                              TT_BACKEND chooses, "cpu" or "cuda"; default "cpu"
 *
 * ---- chapters, first all of the API, then all of the implementation ----
 *  1 base              errors, memory, threads, random numbers, text, files, JSON
 *  2 kernels           the table of a backend; the CPU's own: matrix products, attention, norms, ...
 *  3 tensor            shape and storage
 *  4 batch and cache   sequences end to end; their keys and values, kept from call to call
 *  5 autograd          the tape; ops with forward and backward side by side; custom ops, recomputation
 *  6 tokenizer         byte-pair encoding: train, encode, decode; tokenizer.json, chat templates
 *  7 model             configuration, parameters, forward, low-rank adapters
 *  8 files             safetensors, Hugging Face directories, training state
 *  9 generate          sampling with continuous batching
 * 10 optimizer         AdamW, clipping, schedules
 * 11 grpo              rollouts, advantages, policy losses
 * 12 think             teachers, selection of responses, feedback, advantage-aware shaping
 * 13 train             the training step, over one process or several; metrics
 *  A kernel bodies     each written once and compiled once per instruction set
 *  B Unicode tables    classes and forms of characters
 * A chapter uses only those before it. grep '\[tt:' lists the sections: [tt:autograd.rope] is in chapter 5.
 *
 * Companions in examples/, to be included after this header: tasks.h (questions whose answers can be
 * checked), rewards.h (rewards by rule, equality of mathematical answers), evaluate.h (accuracies with
 * intervals, pass@k, tables), losses.h (policy losses beyond those of chapter 11), feedback.h (further ways
 * to learn from feedback: Critique-GRPO, RLTF, SDPO, OPSD, on-policy distillation, SRPO).
 *
 * To read it all: this manual, then examples/grpo.c, a trainer of two pages, then the chapters. */
#ifndef TTI_SIMD_PASS
#ifndef THINKTUNING_H
#define THINKTUNING_H

/* The implementing file may include this header before any other; then POSIX calls (fsync, monotonic clock)
 * and Linux's large pages are visible even under -std=c99. */
#if defined(THINKTUNING_IMPLEMENTATION) && !defined(_WIN32) && \
    !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L
#if defined(__linux__) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE 1
#endif
#endif
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#ifndef TT_API
#ifdef TT_STATIC
#if defined(__GNUC__) || defined(__clang__)
#define TT_API static __attribute__((unused))
#else
#define TT_API static
#endif
#else
#define TT_API extern
#endif
#endif

#ifdef __cplusplus
#define TT_INIT {}
extern "C" {
#else
#define TT_INIT {0}
#endif

/* ==== 1. base ==============================================================================
 * The context, which every other object belongs to, and what programs beside it need as well: errors, memory,
 * random numbers, growable text, whole files, JSON. */

#define TT_VERSION "0.2.0"

#define TT_STATUS_LIST(X)                                    \
    X(TT_OK,          0, "success")                          \
    X(TT_ERR_ARG,    -1, "invalid argument")                 \
    X(TT_ERR_SHAPE,  -2, "tensor shapes do not match")       \
    X(TT_ERR_MEM,    -3, "out of memory")                    \
    X(TT_ERR_FILE,   -4, "file is damaged or not supported") \
    X(TT_ERR_IO,     -5, "file cannot be read or written")   \
    X(TT_ERR_NUMBER, -6, "number is not finite")             \
    X(TT_ERR_DEVICE, -7, "backend failed")                   \
    X(TT_ERR_STOP,   -8, "stopped by a callback")

#define TT_STATUS_ENUM(name, value, text) name = value,
typedef enum tt_status { TT_STATUS_LIST(TT_STATUS_ENUM) TT_STATUS_END_ = 1 } tt_status;
#undef TT_STATUS_ENUM

typedef struct tt_context tt_context;
typedef struct tt_backend tt_backend;   /* chapter 2 */

/* ---- context ---- */

/* Where all memory comes from. alloc returns memory aligned for any type, as malloc does. free receives the
 * size that alloc was given. Both NULL = malloc/free. */
typedef struct tt_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*free)(void *user, void *memory, size_t bytes);
    void *user;
} tt_allocator;

typedef void (*tt_log_fn)(void *user, tt_status status, const char *text);

typedef struct tt_desc {
    int n_threads;              /* up to 1024; 0 = OMP_NUM_THREADS if set, else one per processor; where
                                   the program is linked without threads it is one, see tt_threads  */
    const char *kernel;         /* CPU kernels: "portable", "avx2", "avx512", "neon", "simd128"; NULL = the
                                   environment's TT_KERNEL, else the best that this CPU runs        */
    const char *matmul;         /* CPU: "f32", or "bf16": the factors of weight products are rounded to
                                   bf16, the sums are float32 (mixed precision; weights, gradients and all
                                   else stay float32), by AVX512-BF16 where it pays ("dot-bf16" forces it);
                                   NULL = the environment's TT_MATMUL, else "f32"                   */
    const tt_backend *backend;  /* NULL = CPU (but see TT_CUDA above)                               */
    tt_allocator allocator;
    tt_log_fn log;              /* receives every error text once; NULL = none                      */
    void *log_user;
} tt_desc;

/* One context owns backend, threads, scratch memory and error text. Contexts are independent: one per thread,
 * any number of them. desc may be NULL. NULL only if memory is out; a bad field gives a context whose every
 * call fails with the reason in tt_error(). */
TT_API tt_context *tt_create(const tt_desc *desc);
TT_API void        tt_destroy(tt_context *ctx);
TT_API int         tt_threads(const tt_context *ctx);  /* threads in use                                 */
TT_API const char *tt_kernel(const tt_context *ctx);   /* CPU kernels in use, and those of bf16 products */
TT_API double      tt_clock(void);                     /* seconds, monotonic where the system has it     */

/* ---- errors ---- */

/* The last sentence of trouble, never NULL, "" if none. An error in graph building is the first cause and
 * sticks until tt_step_reset or tt_error_clear: later ops return NULL quietly. Any other error is replaced by
 * the next one. The sentence can be read until then, also after tt_step_reset, and is gone once the trouble
 * is mended: when a step's work succeeds (tt_backward, tt_eval, tt_optimizer_step, tt_generate, and so
 * tt_trainer_step), or the call that failed succeeds when it is made again (those that read, write, load,
 * save or parse something, or make a model or tokenizer). Other successes leave it, so that several things
 * may be made before one look. ctx may be NULL ("out of memory"; tt_error_clear does nothing). */
TT_API const char *tt_error(const tt_context *ctx);
TT_API tt_status   tt_error_status(const tt_context *ctx);
TT_API void        tt_error_clear(tt_context *ctx);
TT_API const char *tt_status_name(tt_status status);
/* For backends, custom ops and callbacks: sets the error text (printf form) and returns status. */
TT_API tt_status   tt_fail(tt_context *ctx, tt_status status, const char *format, ...);

/* ---- memory ---- */

/* Memory from the context's allocator. tt_alloc returns zeroed bytes, or NULL with the error set. tt_free
 * wants the numbers that tt_alloc was given; memory may be NULL. */
TT_API void     *tt_alloc(tt_context *ctx, size_t count, size_t size);
TT_API void      tt_free(tt_context *ctx, void *memory, size_t count, size_t size);

typedef struct tt_memory { size_t current_bytes, peak_bytes; } tt_memory;
TT_API tt_memory tt_memory_get(const tt_context *ctx);

/* ---- random numbers ---- */

/* Counter-based: Philox4x32-10 (Salmon et al. 2011). A draw is a pure function of (seed, stream, index);
 * tt_rng walks the index. Every seed is valid, also 0. */
typedef struct tt_rng { uint64_t seed, stream, index; } tt_rng;
TT_API uint64_t tt_random(uint64_t seed, uint64_t stream, uint64_t index);
TT_API uint64_t tt_rng_next(tt_rng *rng);
TT_API double   tt_rng_uniform(tt_rng *rng);       /* [0, 1)                             */
TT_API double   tt_rng_normal(tt_rng *rng);        /* mean 0, variance 1; uses two draws */
TT_API int      tt_rng_below(tt_rng *rng, int n);  /* 0 .. n-1, n >= 1                   */
TT_API uint64_t tt_hash(const void *bytes, size_t size, uint64_t seed);

/* ---- text ---- */

/* Growable bytes and token ids. Start from {ctx} with all else 0; data is NUL-terminated (text) and owned by
 * the struct until tt_text_free. After a failed append the content is unchanged. */
typedef struct tt_text { tt_context *ctx; char *data; size_t size, capacity; } tt_text;
typedef struct tt_ids { tt_context *ctx; int32_t *data; size_t size, capacity; } tt_ids;

TT_API tt_status tt_text_append(tt_text *text, const char *bytes, size_t size);

/* Appends, printf form. Numbers have a point whatever the locale. %r is a double in the fewest digits that
 * read back as the same, %R a float; null, as JSON wants it, where it is not finite. No %a, %n, %j, %t, wide
 * characters or long double. */
TT_API tt_status tt_text_format(tt_text *text, const char *format, ...);
TT_API tt_status tt_text_vformat(tt_text *text, const char *format, va_list list);
TT_API tt_status tt_text_json(tt_text *text, const char *bytes, size_t size);  /* appends "quoted\n" */
TT_API void      tt_text_free(tt_text *text);
TT_API tt_status tt_ids_append(tt_ids *ids, const int32_t *values, size_t n);
TT_API void      tt_ids_free(tt_ids *ids);

/* Reads a decimal number, as -1.5e3, at the begin of text: the nearest double, whatever the locale. Returns
 * how many bytes it took, 0 if there is none; no space before it, no hexadecimal, infinity or NaN. */
TT_API size_t    tt_number_read(const char *text, size_t size, double *out);

/* ---- files ---- */

/* Whole files. What is read must be a regular file, for a pipe or a device might never end, of at most
 * TT_MAX_FILE_BYTES. Writing is atomic: a new file beside it (tt-....tmp), fsync, rename; on failure the old
 * file stands and the new one is removed. It keeps the permissions of the file that it replaces. Anything
 * else at path is refused: a device, a pipe, a folder, a symbolic link. A limit on the size of files (ulimit
 * -f) is an error too, if the program ignores SIGXFSZ, as those of examples/ do; else the system ends the
 * program. The library leaves signals alone. */
#ifndef TT_MAX_FILE_BYTES
#define TT_MAX_FILE_BYTES ((uint64_t)16 << 30)
#endif
TT_API tt_status tt_file_read(tt_context *ctx, const char *path, tt_text *out); /* appends to out           */
TT_API tt_status tt_file_write(tt_context *ctx, const char *path, const void *bytes, size_t size);
TT_API tt_status tt_file_readable(tt_context *ctx, const char *path);           /* is a file there?        */
TT_API tt_status tt_file_writable(tt_context *ctx, const char *path);           /* asked before long work   */
TT_API int       tt_file_exists(const char *path);                              /* 1 if anything is there   */
TT_API tt_status tt_make_dirs(tt_context *ctx, const char *path);               /* like mkdir -p            */
/* Appends all of an open stream, a FILE * such as stdin; name is for the error text. The same limit. */
TT_API tt_status tt_stream_read(tt_context *ctx, void *file, const char *name, tt_text *out);

/* ---- JSON ---- */

/* RFC 8259. A parsed document is one block of memory; values live as long as their root. Strings are decoded
 * UTF-8 (NUL-terminated, length beside it); \u escapes of lone surrogates become U+FFFD; depth is limited to
 * 128, the number of values to 2^23. Duplicate keys: the last wins in tt_json_get. Errors name line and
 * column. */
typedef enum tt_json_type {
    TT_JSON_NULL, TT_JSON_BOOL, TT_JSON_NUMBER, TT_JSON_STRING, TT_JSON_ARRAY, TT_JSON_OBJECT
} tt_json_type;

typedef struct tt_json {
    tt_json_type type;
    double number;              /* also 0/1 of a bool                                    */
    const char *string;         /* text of a string; the characters of a number          */
    size_t length;              /* bytes of string, elements of an array or object       */
    const char *key;            /* name if this is a member of an object, else NULL      */
    size_t key_length;
    const struct tt_json *child, *next;   /* first element, next sibling                 */
} tt_json;

TT_API tt_json       *tt_json_parse(tt_context *ctx, const char *text, size_t size);
TT_API void           tt_json_free(tt_context *ctx, tt_json *root);
/* A member of an object: NULL or fallback where it is absent, of another type, or object is none (NULL too).
 * tt_json_int: also for all but whole numbers in 0..2147483647. */
TT_API const tt_json *tt_json_get(const tt_json *object, const char *key);
TT_API const char    *tt_json_text(const tt_json *object, const char *key, const char *fallback);
TT_API double         tt_json_number(const tt_json *object, const char *key, double fallback);
TT_API int            tt_json_int(const tt_json *object, const char *key, int fallback);

/* JSON lines: one value a line. Lines of blanks are passed over, and so is a byte order mark. A text with the
 * character U+0000 is an error, for it would end there as a C string, and so is a line that is no UTF-8.
 * Errors name the file and the line. Start from {ctx} with all else 0. */
typedef struct tt_json_lines {
    tt_context *ctx;
    tt_text text;               /* the whole file; to read from elsewhere, fill it and name instead of open */
    const char *name;           /* of the file, for errors; must live as long            */
    size_t at;
    int line;                   /* of the last value, from 1                             */
} tt_json_lines;

TT_API tt_status tt_json_lines_open(tt_json_lines *, const char *path);
TT_API tt_status tt_json_lines_next(tt_json_lines *, tt_json **value);  /* yours to free; NULL at the end */
/* A text of the last value, which must be an object: NULL if it has no such member. With numbers = 1 a number
 * is a text too, as it is written. Anything else is an error that says what stands there. */
TT_API tt_status tt_json_lines_text(const tt_json_lines *, const tt_json *value, const char *key,
                                    int numbers, const char **text);
TT_API void      tt_json_lines_close(tt_json_lines *);

/* ==== 2. kernels ===========================================================================
 * tt_backend is the seam between autograd and the machine: memory and kernels. All pointers are on the
 * backend unless marked host. Sizes are elements. Names in d.. are gradients; every backward ADDS to
 * them, and a NULL gradient is skipped. A kernel reduces each output in one fixed order whatever else is
 * in the batch. Kernels return TT_OK or tt_fail(ctx, ...). */

typedef enum tt_dtype { TT_F32 = 0, TT_BF16, TT_F16, TT_I32 } tt_dtype;

typedef enum tt_unary {
    TT_NEG = 1, TT_EXP, TT_LOG, TT_TANH, TT_CLAMP, TT_SCALE, TT_GELU_TANH, TT_GELU_ERF
} tt_unary;

typedef enum tt_binary {
    TT_ADD = 1, TT_SUB, TT_MUL, TT_DIV, TT_MINIMUM, TT_MAXIMUM, TT_LESS, TT_SWIGLU
} tt_binary;

/* C[m,n] = (accumulate ? C : bias or 0) + A[m,k] B[k,n] and, if `activation`, Y = activation(C).
 * transpose_a: A is stored [k,m]; transpose_b: B is stored [n,k]. ld.: row strides of the stored matrices.
 * One chain of fused multiply-adds over k per element of C, begun from C or bias, so a product split
 * along k (in bf16: at a multiple of 32) and continued gives the same bits. */
typedef struct tt_gemm_args {
    int m, n, k;
    int transpose_a, transpose_b, accumulate;
    int lda, ldb, ldc;
    const float *a, *b, *bias;
    const uint16_t *half_b;             /* B in bf16, instead of b; only if the backend takes_half */
    const void *panels;                 /* what gemm_panels or pack made of this B, beside it, or NULL */
    const void *packed_a;               /* what pack made of A as it is stored, beside it, or NULL */
    float *c;
    tt_unary activation;                /* 0 = none; not TT_CLAMP or TT_SCALE                      */
    float *y;                           /* strides of c; may be c                                  */
} tt_gemm_args;

/* Sequence s has query rows offsets[s] .. offsets[s+1]-1; its first query stands at position
 * query_start[s] (NULL = 0); its key of position j is row key_start[s] + j of k and v
 * (NULL = offsets[s]), but of the first shared_keys positions, if any, row j for all sequences. Query at
 * position p sees keys 0..p. key_tiles: k is a cache that store_keys filled. */
typedef struct tt_attention_args {
    int n_sequences, n_tokens, n_heads, n_kv_heads, head_dim;
    float scale;
    int key_tiles, shared_keys;
    const int32_t *offsets, *query_start, *key_start;
    const int32_t *host_offsets;
    const float *q, *k, *v;       /* [n_tokens, n_heads*head_dim], [rows, n_kv_heads*head_dim] */
    float *out, *lse;             /* lse [n_tokens, n_heads]: log sum exp of a row's scores, for backward;
                                     NULL in decode                                            */
    const float *dout;            /* backward: no two sequences share a row of k and v         */
    float *dq, *dk, *dv;
} tt_attention_args;

/* Of some tokens the ids among which each was drawn: token i has ids[at[i] .. at[i + 1]), ascending; none =
 * the whole vocabulary; at NULL = that for every token. */
typedef struct tt_kept { int32_t *at, *ids; } tt_kept;
typedef struct tt_logprobs_args {
    int n, dim, vocab;
    float inv_temperature;
    const float *x, *w;                 /* [n,dim], [vocab,dim]  */
    const uint16_t *half_w;             /* w in bf16, instead of w; only if the backend takes_half */
    const void *packed_x, *packed_w;    /* what pack made of them, or NULL */
    const int32_t *targets;             /* [n]                   */
    tt_kept kept;                       /* softmax over these alone; host memory, the CPU's kernels only */
    float *logprobs, *entropy, *lse;    /* [n]; entropy may be NULL; lse of the scaled logits, for backward */
    const float *dlogprobs, *dentropy;  /* backward: [n], either may be NULL */
    float *dx, *dw;
} tt_logprobs_args;

/* Per row one token: greedy the most likely, lowest id on a tie; else the first whose cumulated probability
 * under softmax(inv_temperature * logits) exceeds u. */
typedef struct tt_sample_args {
    int n, vocab, greedy;
    float inv_temperature;
    const float *logits;                /* [n,vocab]                               */
    const double *u;                    /* [n] in [0,1)                            */
    int32_t *tokens;                    /* [n]                                     */
    float *logprobs;                    /* [n], the values of logprobs_forward     */
} tt_sample_args;

typedef struct tt_adamw_args {
    size_t n;
    float *p, *g, *m, *v;
    float lr, beta1, beta2, eps, weight_decay;
    float correction1, correction2;     /* 1 - beta^t             */
    float grad_scale;                   /* multiplies g (clipping) */
} tt_adamw_args;

struct tt_backend {
    const char *name;
    int takes_half;                     /* half_b, half_w are read */
    void *config;
    tt_status (*open)(tt_context *ctx, const tt_backend *self, void **state);
    void      (*close)(tt_context *ctx, void *state);

    /* memory */
    void     *(*alloc)(tt_context *ctx, size_t bytes);                 /* NULL with the error set */
    void      (*free)(tt_context *ctx, void *memory, size_t bytes);
    tt_status (*upload)(tt_context *ctx, void *to, const void *from_host, size_t bytes);
    tt_status (*download)(tt_context *ctx, void *to_host, const void *from, size_t bytes);
    tt_status (*copy)(tt_context *ctx, void *to, const void *from, size_t bytes);
    tt_status (*zero)(tt_context *ctx, void *to, size_t bytes);
    tt_status (*sync)(tt_context *ctx);

    /* Matrix product. gemm_panels: B in the order in which gemm reads it, for many products with the
     * same B; returns the bytes that it takes (0 = none) and makes it in `to` unless that is NULL. NULL
     * = never. pack: likewise a whole matrix [rows,cols] rounded as gemm rounds both its factors, turned or
     * not. */
    tt_status (*gemm)(tt_context *ctx, const tt_gemm_args *args);
    size_t    (*gemm_panels)(tt_context *ctx, const tt_gemm_args *args, void *to);
    size_t    (*pack)(tt_context *ctx, int rows, int cols, const float *from, void *to);

    /* Attention. A cache keeps keys in the order in which one query reads them: key_tile rows side by side
     * for each channel. The cache of a sequence begins at a multiple of key_tile rows. store_keys: row i of
     * k [n, heads*head_dim] goes to rows[i]. NULL = plain rows. shared_keys is a multiple of key_block; 0 =
     * forward reads no shared keys. */
    tt_status (*attention_forward)(tt_context *ctx, const tt_attention_args *args);
    tt_status (*attention_backward)(tt_context *ctx, const tt_attention_args *args);
    int       (*key_tile)(tt_context *ctx);
    tt_status (*store_keys)(tt_context *ctx, float *cache, const float *k, const int32_t *rows,
                            int n, int heads, int head_dim);
    int       key_block;

    /* The head: log-probs of targets under softmax(inv_temperature * x w'), never as a whole matrix. */
    tt_status (*logprobs_forward)(tt_context *ctx, const tt_logprobs_args *args);
    tt_status (*logprobs_backward)(tt_context *ctx, const tt_logprobs_args *args);

    /* Rows: x, y [n,dim]; gather y[i] = x[rows[i]]; scatter_add dx[rows[i]] += dy[i] (rows may repeat);
     * scatter y[rows[i]] = x[i] (rows distinct). */
    tt_status (*gather_rows)(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n, int dim);
    tt_status (*scatter_add_rows)(tt_context *ctx, float *dx, const float *dy, const int32_t *rows,
                                  int n, int dim);
    tt_status (*scatter_rows)(tt_context *ctx, float *y, const float *x, const int32_t *rows, int n, int dim);

    /* y[n,count] = x[n, begin..begin+count) of rows of width cols; backward adds dy to those columns of
     * dx. */
    tt_status (*slice)(tt_context *ctx, float *y, const float *x, int n, int cols, int begin, int count);
    tt_status (*slice_backward)(tt_context *ctx, float *dx, const float *dy,
                                int n, int cols, int begin, int count);

    /* Norms of rows x [n,dim]; mean and rstd [n] are kept for backward. */
    tt_status (*rmsnorm)(tt_context *ctx, float *y, float *rstd, const float *x, const float *w,
                         int n, int dim, float eps);
    tt_status (*rmsnorm_backward)(tt_context *ctx, float *dx, float *dw, const float *dy, const float *x,
                                  const float *w, const float *rstd, int n, int dim);
    tt_status (*layernorm)(tt_context *ctx, float *y, float *mean, float *rstd, const float *x,
                           const float *w, const float *b, int n, int dim, float eps);
    tt_status (*layernorm_backward)(tt_context *ctx, float *dx, float *dw, float *db, const float *dy,
                                    const float *x, const float *w, const float *mean, const float *rstd,
                                    int n, int dim);

    /* y = rotation of x by its position's angles; inverse = 1 turns back (the backward), and adds to y. */
    tt_status (*rope)(tt_context *ctx, float *y, const float *x, const float *cos_table,
                      const float *sin_table, const int32_t *positions,
                      int n, int heads, int head_dim, int inverse);

    /* Elementwise over n values; p0, p1: bounds of clamp, factor of scale. */
    tt_status (*unary)(tt_context *ctx, tt_unary op, float *y, const float *x, size_t n, float p0, float p1);
    tt_status (*unary_backward)(tt_context *ctx, tt_unary op, float *dx, const float *dy,
                                const float *x, const float *y, size_t n, float p0, float p1);
    tt_status (*binary)(tt_context *ctx, tt_binary op, float *y, const float *a, const float *b, size_t n);
    tt_status (*binary_backward)(tt_context *ctx, tt_binary op, float *da, float *db, const float *dy,
                                 const float *a, const float *b, size_t n);
    tt_status (*where)(tt_context *ctx, float *y, const float *condition, const float *a, const float *b,
                       size_t n);
    tt_status (*where_backward)(tt_context *ctx, float *da, float *db, const float *dy,
                                const float *condition, size_t n);

    /* small[4] broadcasts to big[4] (entries equal or 1). broadcast: y(big) (+)= x(small).
     * reduce: y(small) (+)= sums of x(big). bias_backward: db[dim] += column sums of dy[n,dim]. */
    tt_status (*broadcast)(tt_context *ctx, float *y, const float *x, const int *small_shape,
                           const int *big_shape, int accumulate);
    tt_status (*reduce)(tt_context *ctx, float *y, const float *x, const int *small_shape,
                        const int *big_shape, int accumulate);
    tt_status (*bias_backward)(tt_context *ctx, float *db, const float *dy, int n, int dim);

    tt_status (*axpy)(tt_context *ctx, float *y, const float *x, float alpha, size_t n);   /* y += alpha x */
    tt_status (*sum_squares)(tt_context *ctx, const float *x, size_t n, double *out);
    tt_status (*adamw)(tt_context *ctx, const tt_adamw_args *args);
    tt_status (*cast)(tt_context *ctx, void *to, tt_dtype to_type, const void *from, tt_dtype from_type,
                      size_t n);

    /* x[i] = std times the i-th of tt_rng_normal's values of a stream. NULL = drawn on the host. */
    tt_status (*normal)(tt_context *ctx, float *x, size_t n, uint64_t seed, uint64_t stream, double std);

    /* NULL = rows of logits are downloaded and drawn from on the host, as they are with top-k, top-p, min-p
     * and repetition penalty. */
    tt_status (*sample)(tt_context *ctx, const tt_sample_args *args);

    /* Steps of decoding launch the same kernels again and again. From step_begin on (1 = it does so) a
     * backend may hold the launches back, to hand them over as one at step_end; nothing is downloaded in
     * between. step_end: 0 = none of the step's work was done, and it has to be launched once more.
     * NULL = each launch goes on its own. */
    int       (*step_begin)(tt_context *ctx);
    int       (*step_end)(tt_context *ctx);
};

TT_API const tt_backend *tt_cpu_backend(void);

/* In tt_cuda.cu, an object that the program links: one NVIDIA GPU, devices 0..15. Errors (no such device,
 * memory) are those of tt_create. tt_cuda_set: precision of products and attention, and which kernels make
 * them (see that file's top); it starts from the environment's TT_CUDA_MATH and TT_CUDA_KERNELS. Device
 * memory is counted apart from tt_memory_get. */
typedef enum tt_cuda_math { TT_CUDA_F32 = 0, TT_CUDA_TF32, TT_CUDA_BF16 } tt_cuda_math;
typedef enum tt_cuda_kernels { TT_CUDA_FAST = 0, TT_CUDA_OWN, TT_CUDA_NAIVE } tt_cuda_kernels;
extern const tt_backend *tt_cuda_backend(int device);
extern tt_status         tt_cuda_set(tt_context *ctx, tt_cuda_math math, tt_cuda_kernels kernels);
extern tt_memory         tt_cuda_memory_get(const tt_context *ctx);
/* What has run since the context opened. Products: by cuBLASLt, in our tiles, one thread a result; refused by
 * cuBLASLt. Activations: in cuBLASLt's pass, apart. Factors rounded to bf16 for products, and the bytes that
 * were read and written for it. Gradients written that were to be zeroed and added to. Attention: in tiles,
 * of one query, one thread a row. Steps of decoding as graphs: made, updated, repeated, launched, lost. */
typedef struct tt_cuda_counts {
    long gemm_blas, gemm_tiles, gemm_naive, gemm_refused;
    long activations_fused, activations_apart, factors_rounded;
    size_t bytes_rounded;
    long gradients_written;
    long attention_tiles, attention_decode, attention_naive;
    long graphs_made, graphs_updated, graphs_repeated, graphs_launched, graphs_lost;
} tt_cuda_counts;
extern tt_cuda_counts    tt_cuda_counts_get(const tt_context *ctx);
TT_API const tt_backend *tt_backend_get(const tt_context *ctx);
TT_API void             *tt_backend_state(const tt_context *ctx);

/* ==== 3. tensor ============================================================================
 * Row-major, contiguous, up to four dimensions. Fields are for reading. Two lifetimes: long-lived tensors
 * (parameters) belong to whoever created them, tensors of one step live in the step's arena and go at once
 * with tt_step_reset. */

#define TT_MAX_DIMS 4
typedef struct tt_tensor tt_tensor;
struct tt_tensor {
    tt_context *ctx;
    tt_dtype dtype;
    int ndim, shape[TT_MAX_DIMS];   /* ndim 0 is a scalar; unused entries are 1              */
    size_t size;                    /* number of elements                                    */
    void *data;                     /* on the backend                                        */
    float *grad;                    /* on the backend; NULL until a backward needs it        */
    int requires_grad;              /* gradient flows to or through this tensor              */
    int retain_grad;                /* set to keep grad of an inner tensor after tt_backward */
    int persistent;                 /* long-lived                                            */
    char *name;                     /* may be NULL                                           */
    /* private */
    struct tti_node *node;          /* op that made it; NULL for leaves                      */
    int grad_is_zero;               /* 1: whatever stands in grad, until tt_grad writes the  */
                                    /* zeros or a product overwrites them                    */
    int lent;                       /* data belongs to someone else, e.g. to a mapped file   */
    void *panels;                   /* of gemm_panels, while tt_generate runs; or of pack    */
    size_t panels_bytes, panels_at; /* panels_at: see tti_packed; 0 once data is written     */
    int panels_transposed;
};
#define TT_F(tensor) ((float *)(tensor)->data)

/* Long-lived, zeroed. shape has ndim entries, each >= 1. A parameter takes part in gradients. */
TT_API tt_tensor *tt_tensor_create(tt_context *ctx, tt_dtype dtype, int ndim, const int *shape,
                                   const char *name);
TT_API tt_tensor *tt_parameter(tt_context *ctx, int ndim, const int *shape, const char *name);
TT_API void       tt_tensor_destroy(tt_tensor *tensor);
/* Of this step: zeros, a copy of host values, a scalar. Set requires_grad = 1 to differentiate by it. */
TT_API tt_tensor *tt_zeros(tt_context *ctx, int ndim, const int *shape);
TT_API tt_tensor *tt_constant(tt_context *ctx, int ndim, const int *shape, const float *values);
TT_API tt_tensor *tt_scalar(tt_context *ctx, float value);
/* Between backend and host; values holds tensor->size floats; get widens bf16 and f16. A gradient that does
 * not exist reads as zeros. tt_item reads a tensor of one element; NaN on NULL. */
TT_API tt_status  tt_tensor_set(tt_tensor *tensor, const float *values);
TT_API tt_status  tt_tensor_get(const tt_tensor *tensor, float *values);
TT_API tt_status  tt_tensor_get_grad(const tt_tensor *tensor, float *values);
TT_API double     tt_item(const tt_tensor *tensor);
/* Frees everything of the step (tensors, tape) and ends a graph error; tt_error still says it. Parameters and
 * their gradients stay. */
TT_API void       tt_step_reset(tt_context *ctx);

/* ==== 4. batch and cache ===================================================================
 * What runs through a model at once: tokens of several sequences, end to end, no padding. With a cache a
 * sequence goes on where its slot ends, with a parent where that ends; else it begins at position 0. */

typedef struct tt_kv_cache tt_kv_cache;
typedef struct tt_batch_desc {
    int n_sequences;
    const int32_t *offsets;        /* [n_sequences + 1] from 0; sequence s is tokens[offsets[s] ..
                                      offsets[s+1]) */
    const int32_t *tokens;         /* [n_tokens]                                                         */
    const unsigned char *mask;     /* [n_tokens] 1 = a target, predicted from the token before it; the   */
                                   /* first of a sequence never is. NULL = every token but the first     */
    const int32_t *parents;        /* [n_sequences] the earlier sequence that each goes on from, -1 = none: a
                                      prompt of many responses is computed once. Its last token predicts
                                      nothing in them. NULL = none; not with a cache; backwards on the CPU
                                      alone                                                              */
    tt_kv_cache *cache;            /* NULL in training                                                   */
    const int32_t *cache_slots;    /* [n_sequences], with a cache                                        */
} tt_batch_desc;

/* Of this step. Arrays named d_ are on the backend, the others on the host. */
typedef struct tt_batch {
    tt_context *ctx;
    int n_sequences, n_tokens, n_targets, max_length;
    const int32_t *offsets, *tokens;
    const int32_t *positions;              /* [n_tokens] in the sequence, from the cache's length on, or
                                              from where its parent ends                                 */
    const int32_t *target_rows, *targets;  /* [n_targets] row that predicts, token that is predicted     */
    tt_kept kept;                          /* of the targets; see tt_sampling.keep_sampling_mask         */
    const int32_t *d_offsets, *d_positions;
    const int32_t *key_rows;               /* [n_keys] with parents: the tokens that each sequence sees  */
    int n_keys;
    const int32_t *d_query_start;          /* [n_sequences] first position, with a cache or parents      */
    const int32_t *d_key_start;            /* [n_sequences] first row of the slot in the cache, or in
                                              key_rows                                                   */
    const int32_t *d_cache_rows;           /* [n_tokens] row of the cache that a token writes            */
    tt_kv_cache *cache;
    const int32_t *cache_slots;
} tt_batch;
TT_API tt_batch *tt_batch_create(tt_context *ctx, const tt_batch_desc *desc);

/* Keys and values of every layer for n_slots sequences of up to `capacity` positions; made by
 * tt_kv_cache_create of chapter 7. share copies the first `length` positions from one slot to another. */
TT_API void      tt_kv_cache_destroy(tt_kv_cache *);
TT_API int       tt_kv_cache_length(const tt_kv_cache *, int slot);
TT_API void      tt_kv_cache_truncate(tt_kv_cache *, int slot, int length);
TT_API tt_status tt_kv_cache_share(tt_kv_cache *, int from_slot, int to_slot, int length);

/* ==== 5. autograd ==========================================================================
 * Ops record themselves on the context's tape; tt_backward walks it in reverse once. Gradients of leaves
 * accumulate over calls until tt_zero_grad, so micro-batches simply add up. */

/* The loss has one element; the tape is consumed. tt_eval gives the first error of graph building, else
 * TT_OK. */
TT_API tt_status tt_backward(tt_context *ctx, tt_tensor *loss);
TT_API tt_status tt_eval(tt_context *ctx);
TT_API tt_status tt_zero_grad(tt_tensor *tensor);
/* Between them ops record nothing, and a model's layers keep one layer's memory. They nest. */
TT_API void      tt_no_grad_begin(tt_context *ctx);
TT_API void      tt_no_grad_end(tt_context *ctx);

/* Elementary ops; binary ones broadcast like NumPy. minimum and maximum send the gradient to a on a tie. */
TT_API tt_tensor *tt_add(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_sub(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_mul(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_div(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_minimum(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_maximum(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_neg(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_exp(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_log(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_tanh(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_scale(tt_context *, tt_tensor *x, float factor);
/* less: 1 where a < b, else 0, no gradient. where: a where condition != 0, else b. clamp: gradient 0 outside
 * the bounds, 1 on them. detach: the same value without a gradient, the papers' sg(). */
TT_API tt_tensor *tt_less(tt_context *, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_where(tt_context *, tt_tensor *condition, tt_tensor *a, tt_tensor *b);
TT_API tt_tensor *tt_clamp(tt_context *, tt_tensor *x, float low, float high);
TT_API tt_tensor *tt_detach(tt_context *, tt_tensor *x);
/* Over all elements, to a scalar; or over one axis (from the end if negative), which is kept with size 1. */
TT_API tt_tensor *tt_sum(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_mean(tt_context *, tt_tensor *x);
TT_API tt_tensor *tt_sum_axis(tt_context *, tt_tensor *x, int axis);
TT_API tt_tensor *tt_mean_axis(tt_context *, tt_tensor *x, int axis);
/* view shares x's data; columns is x[:, begin : begin + count]; gather_rows is x[rows], rows on the host. */
TT_API tt_tensor *tt_view(tt_context *, tt_tensor *x, int ndim, const int *shape);
TT_API tt_tensor *tt_columns(tt_context *, tt_tensor *x, int begin, int count);
TT_API tt_tensor *tt_gather_rows(tt_context *, tt_tensor *x, const int32_t *rows, int n);

/* The transformer's ops. N rows (tokens), K in, M out, C channels, V entries of the vocabulary. w of linear
 * and matmul may be bf16 or f16, that of embedding and, where the backend takes_half, of token_logprobs bf16.
 *     linear     x[N,K] w[M,K]^T + bias -> [N,M]          matmul   x[N,K] w[K,M] + bias (GPT-2's Conv1D)
 *     embedding  w[V,C], n host ids -> [n,C]              rmsnorm, layernorm  over the last axis, w[C], b[C]
 *     swiglu     silu(gate) up                            gelu     tanh_form 0: by erf */
TT_API tt_tensor *tt_linear(tt_context *, tt_tensor *x, tt_tensor *w, tt_tensor *bias_or_null);
TT_API tt_tensor *tt_matmul(tt_context *, tt_tensor *x, tt_tensor *w, tt_tensor *bias_or_null);
TT_API tt_tensor *tt_embedding(tt_context *, tt_tensor *w, const int32_t *ids, int n);
TT_API tt_tensor *tt_rmsnorm(tt_context *, tt_tensor *x, tt_tensor *w, float eps);
TT_API tt_tensor *tt_layernorm(tt_context *, tt_tensor *x, tt_tensor *w, tt_tensor *b, float eps);
TT_API tt_tensor *tt_swiglu(tt_context *, tt_tensor *gate, tt_tensor *up);
TT_API tt_tensor *tt_gelu(tt_context *, tt_tensor *x, int tanh_form);

/* Rotary tables cos, sin are [positions, head_dim/2]; x [N, heads*head_dim] in Hugging Face's layout of
 * halves. */
TT_API tt_tensor *tt_rope(tt_context *, tt_tensor *x, tt_tensor *cos_table, tt_tensor *sin_table,
                          const tt_batch *, int head_dim);
/* Causal attention within each sequence, grouped-query where k, v have fewer heads; blockwise, no T x T
 * tensor. q [N, n_heads*head_dim], k, v [N, n_kv_heads*head_dim] -> [N, n_heads*head_dim]. */
typedef struct tt_attention_desc {
    int n_heads, n_kv_heads, head_dim;
    int layer;        /* of the cache, if the batch has one       */
    float scale;      /* multiplies q.k; 0 = 1 / sqrt(head_dim)   */
} tt_attention_desc;
TT_API tt_tensor *tt_attention(tt_context *, tt_tensor *q, tt_tensor *k, tt_tensor *v, const tt_batch *,
                               const tt_attention_desc *);
/* log softmax(x w^T / temperature)[target] of each row, streamed in blocks and recomputed in backward: no N x
 * V tensor. x [N,C], w [V,C], targets: N host ids -> [N]. entropy_out (may be NULL) receives -sum p log p,
 * [N]. */
TT_API tt_tensor *tt_token_logprobs(tt_context *, tt_tensor *x, tt_tensor *w, const int32_t *targets,
                                    float temperature, tt_tensor **entropy_out);

/* Ops of your own. forward fills out (zeroed, of the given shape); backward reads out->grad and adds to
 * tt_grad(inputs[i]), which is NULL where no gradient is wanted. user must live until tt_backward. */
typedef struct tt_op_desc {
    const char *name;
    tt_status (*forward)(void *user, tt_tensor *const *inputs, int n_inputs, tt_tensor *out);
    tt_status (*backward)(void *user, tt_tensor *const *inputs, int n_inputs, tt_tensor *out);
    void *user;
} tt_op_desc;
TT_API tt_tensor *tt_custom(tt_context *, const tt_op_desc *, tt_tensor *const *inputs, int n_inputs,
                            int ndim, const int *shape);
TT_API float     *tt_grad(tt_tensor *tensor);

/* Recomputation (gradient checkpointing): runs fn without keeping its inner tensors and runs it again in
 * backward. fn must be a pure function of inputs, user and parameters. user must live until tt_backward. */
typedef tt_tensor *(*tt_segment_fn)(tt_context *, void *user, tt_tensor *const *inputs, int n_inputs);
TT_API tt_tensor *tt_recompute(tt_context *, tt_segment_fn fn, void *user, tt_tensor *const *inputs,
                               int n_inputs);

/* ==== 6. tokenizer =========================================================================
 * BPE, byte-level or of SentencePiece's kind. Files: Hugging Face's tokenizer.json of GPT-2, GPT-NeoX, Llama
 * 2 and 3, Mistral, Qwen 2 to 3, SmolLM2, Mistral-Nemo and alike; of .tiktoken ranks (r50k, p50k, cl100k,
 * o200k, Llama 3) tools/convert_weights.py makes one. The ids are those of the packages tokenizers 0.23 and
 * tiktoken 0.14; what a file asks for and is not done here is an error that names it. Memory: a tokenizer,
 * and for each thread that encodes a cache of 1 MiB and what the longest text without a split needs (36
 * bytes per byte of that piece, 16 for each added token in a text). Encoding and decoding write to the
 * tokenizer's caches, const as it is: like its context, it is used by one thread at a time. tt_encode_batch
 * works on all threads of the context; threads of your own take a context and a tokenizer each. */

typedef struct tt_tokenizer tt_tokenizer;
typedef enum tt_pretokenizer {
    TT_PRETOKENIZE_GPT2 = 1,     /* ByteLevel with GPT-2's pattern; r50k, GPT-NeoX                        */
    TT_PRETOKENIZE_WHITESPACE,   /* Split " ?\S+|\s+(?!\S)|\s+", each word with its leading space          */
    TT_PRETOKENIZE_BYTES,        /* no pre-tokenization: merges may cross everything                      */
    TT_PRETOKENIZE_SMOLLM2,      /* each digit apart, the rest as GPT-2                                   */
    TT_PRETOKENIZE_LLAMA3,       /* contractions in any case, three digits at most                        */
    TT_PRETOKENIZE_QWEN2,        /* the same with each digit apart                                        */
    TT_PRETOKENIZE_CL100K,       /* as Llama 3, but white space at the end of the text is one piece       */
    TT_PRETOKENIZE_O200K,        /* words split before a capital letter, contractions at their end        */
    TT_PRETOKENIZE_TEKKEN        /* Mistral-Nemo: the same without contractions, each digit apart         */
} tt_pretokenizer;

/* Where training text comes from: read fills at most n bytes, returns how many, 0 at the end. */
typedef struct tt_text_source {
    size_t (*read)(void *user, char *bytes, size_t n);
    void *user;
} tt_text_source;

typedef struct tt_tokenizer_desc {
    int vocab_size;                    /* incl. special tokens; 0 = 32000; fewer if the text has no more */
    int min_frequency;                 /* of a pair to be merged; 0 = 2                                  */
    int all_bytes;                     /* 1: all 256 bytes are tokens; 0: those of text and specials     */
    tt_pretokenizer pretokenizer;      /* 0 = GPT-2                                                      */
    const char *const *special_tokens; /* get ids 0, 1, ... in this order                                */
    int n_special_tokens;
} tt_tokenizer_desc;

/* Merges the most frequent pair until vocab_size; a tie goes to the pair with the smaller ids (left, then
 * right). */
TT_API tt_tokenizer *tt_tokenizer_train(tt_context *, const tt_tokenizer_desc *, tt_text_source text);
/* The same from a list: each word, a space before it included, becomes one token (its bytes and beginnings
 * are tokens too). Here min_frequency 0 = 1 and pretokenizer 0 = WHITESPACE. n may be 0. */
TT_API tt_tokenizer *tt_tokenizer_words(tt_context *, const tt_tokenizer_desc *desc_or_null,
                                        const char *const *words, int n);
TT_API tt_tokenizer *tt_tokenizer_load(tt_context *, const char *path);
TT_API tt_tokenizer *tt_tokenizer_parse(tt_context *, const char *file, size_t size);
TT_API tt_status     tt_tokenizer_save(const tt_tokenizer *, const char *tokenizer_json_path);
TT_API tt_status     tt_tokenizer_json(const tt_tokenizer *, tt_text *out);
TT_API void          tt_tokenizer_destroy(tt_tokenizer *);
TT_API int           tt_vocab_size(const tt_tokenizer *);      /* highest id + 1 */
/* Of a whole token as it decodes, e.g. "<end>" or " the"; -1 if none */
TT_API int           tt_token_id(const tt_tokenizer *, const char *text);
TT_API int           tt_token_is_special(const tt_tokenizer *, int id);

typedef enum tt_special { TT_SPECIAL_PARSE = 0, TT_SPECIAL_TEXT, TT_SPECIAL_REFUSE } tt_special;
/* Both append to out, or on failure nothing. Special tokens in the text are cut out first (PARSE), read as
 * plain text (TEXT), or are an error (REFUSE). Decoding gives the bytes back, also such as are no UTF-8, but
 * for what the file's normalizer has changed (NFC; the space that Llama 2 adds is taken off again, and so is
 * the text's own where Metaspace, finding one, adds none). An id without a token reads as U+FFFD: models have
 * more rows than their tokenizer has tokens, and may sample one of them. */
TT_API tt_status tt_encode(const tt_tokenizer *, const char *text, size_t size, tt_special special,
                           tt_ids *out);
TT_API tt_status tt_decode(const tt_tokenizer *, const int32_t *ids, size_t n, int skip_special,
                           tt_text *out);
/* As tt_encode, with the tokens that the file's post_processor puts around a text (Llama: its BOS). */
TT_API tt_status tt_encode_document(const tt_tokenizer *, const char *text, size_t size, tt_special special,
                                    tt_ids *out);
/* How every prompt here begins. The text, whose special tokens count, with the question, which is plain text,
 * in the place of each {question} (NULL: the text as it is), encoded as one. In front stands what the
 * post_processor puts before a text (Llama: its BOS), unless the prompt begins with it, or with a turn of a
 * chat template (<|im_start|>, <|start_header_id|>): such a template says itself how it begins. What follows
 * a prompt, an answer or feedback, is tt_encode's. */
TT_API tt_status tt_encode_prompt(const tt_tokenizer *, const char *text, size_t size, const char *question,
                                  size_t question_size, tt_ids *out);
/* Many texts on all threads; text i gives out->data[offsets[i] .. offsets[i+1]), the ids that tt_encode
 * gives. offsets has n + 1 places; out is appended to. */
typedef struct tt_span { const char *data; size_t size; } tt_span;
TT_API tt_status tt_encode_batch(const tt_tokenizer *, const tt_span *texts, size_t n, tt_special special,
                                 tt_ids *out, size_t *offsets);

/* What tt_encode refuses (TT_ERR_ARG, which names byte and offset). BYTES, the default: a byte without a
 * token, where a vocabulary has not all 256 (SmolLM2, or trained without all_bytes); else such bytes vanish,
 * as in Hugging Face. UTF8: text that is no valid UTF-8; else its bytes are encoded as they are. */
enum { TT_REFUSE_NOTHING = 0, TT_REFUSE_BYTES = 1, TT_REFUSE_UTF8 = 2 };
TT_API void tt_tokenizer_refuse(tt_tokenizer *, int what);

/* Decoding token by token: what comes out is whole characters; half of one is held until its rest comes. All
 * of it, with the end, is what tt_decode gives. Start from {tokenizer, skip_special} with all else 0; it owns
 * no memory. */
typedef struct tt_decoder {
    const tt_tokenizer *tokenizer;
    int skip_special, started, n_held;
    char held[4];
} tt_decoder;
TT_API tt_status tt_decoder_push(tt_decoder *, int32_t id, tt_text *out);
TT_API tt_status tt_decoder_end(tt_decoder *, tt_text *out);       /* appends what is held, and begins anew */

/* The text of a conversation, byte for byte that of transformers' apply_chat_template without tools. Formats:
 * "chatml"; "qwen2", "qwen2.5", "smollm2" (the same with a system message of their own where none is given),
 * "qwen3" (thoughts only behind the last question), "llama3", "llama3.1" (also 3.2 and 3.3: its system
 * message begins with two dates), and "plain" ("role: content" lines). The roles of qwen2.5, qwen3 and
 * llama3.1 are system, user and assistant. n may be 0. */
typedef struct tt_message { const char *role, *content; } tt_message;
typedef struct tt_chat_desc {
    const char *format;              /* NULL or "" = by the tokenizer's special tokens: chatml, llama3,
                                        llama3.1, or else plain */
    const tt_tokenizer *tokenizer;   /* may be NULL */
    const char *date;                /* today's, for llama3.1; NULL = "26 Jul 2024", as its template says */
    int generation_prompt;           /* 1: opens the assistant's answer at the end */
    int parse_content;               /* tt_chat_encode: 1 = special tokens in roles and contents count, as
                                        in transformers */
    size_t from;                     /* tt_chat_encode: bytes of the text to leave out, since their ids are
                                        known */
} tt_chat_desc;
TT_API tt_status tt_chat_render(tt_context *, const tt_chat_desc *, const tt_message *messages, int n,
                                tt_text *out);
/* The same as ids, appended to out; the tokenizer is required. The template's special tokens count; what
 * stands in role and content is text, so that nobody's text ends a turn or begins one ("plain" has no tokens
 * for it and cannot tell). It begins as in tt_encode_prompt, unless from leaves that out. answer_or_null: the
 * last message is the assistant's, out receives all up to where sampling begins, answer the rest, which is
 * what is to be learnt. */
TT_API tt_status tt_chat_encode(tt_context *, const tt_chat_desc *, const tt_message *messages, int n,
                                tt_ids *out, tt_ids *answer_or_null);
/* The format that a chat_template of Hugging Face writes, a text that lives for ever; NULL and TT_ERR_FILE if
 * it is none of the above to the letter (but for its part about tools). See also tt_model_chat_format. */
TT_API const char *tt_chat_recognize(tt_context *, const char *chat_template, size_t size);


/* ==== 7. model =============================================================================
 * One decoder-only transformer, switched by config: Llama and its relatives, and GPT-2. Field and tensor
 * names are Hugging Face's. */

typedef struct tt_rope_scaling {      /* "llama3" scaling of the rotary frequencies; factor 0 = none */
    float factor, low_freq_factor, high_freq_factor;
    int original_max_position_embeddings;
} tt_rope_scaling;

#define TT_MAX_MORE_EOS 7
typedef struct tt_model_config {
    int vocab_size, hidden_size, num_hidden_layers, num_attention_heads;   /* required                    */
    int intermediate_size;            /* 0 = 4 * hidden_size (gpt2), 8/3 rounded up to 32 (others)         */
    int num_key_value_heads;          /* 0 = num_attention_heads                                           */
    int head_dim;                     /* 0 = hidden_size / num_attention_heads                             */
    int max_position_embeddings;      /* 0 = 2048; costs memory as far as used (gpt2: from the beginning)  */
    float norm_eps;                   /* rms_norm_eps, layer_norm_epsilon; 0 = 1e-5 (qwen: 1e-6)           */
    float rope_theta;                 /* 0 = 10000                                                         */
    tt_rope_scaling rope_scaling;
    int tie_word_embeddings;
    int attention_bias;               /* biases on q, k, v (qwen2); llama's attention_bias adds o          */
    int attention_out_bias, mlp_bias;
    int qk_norm;                      /* RMSNorm on each head's q and k (qwen3)                            */
    int no_rope_interval;             /* every n-th layer without RoPE (smollm3); 0 = none                 */
    int gpt2;                         /* 1: LayerNorm, learned positions, GELU, fused qkv in Conv1D layout */
    int bos_token_id, eos_token_id;   /* -1 = none; 0 is a token                                           */
    int n_more_eos, more_eos[TT_MAX_MORE_EOS];   /* further tokens that end a text (Llama 3 lists three)   */
    int has_pad_token, pad_token_id;  /* kept for other programs (of a list the first); nothing here pads  */
    char model_type[32];              /* "llama", "qwen2", "qwen3", "mistral", "smollm3", "gpt2"; "" = the */
                                      /* family's first                                                    */
    int recompute;                    /* 1: layers run again in backward, time for memory; no config.json */
} tt_model_config;

/* Creation starts from a seed: embedding N(0,1) (gpt2 and tied: 0.02), head 0.02, matrices N(0, 1/in), those
 * that write to the residual stream further / sqrt(2 layers); gpt2: 0.02 in place of 1/sqrt(in). A copy has
 * the same weights and adapters and no gradients: a frozen teacher. Assign copies weights between models of
 * equal configs and adapters. */
typedef struct tt_model tt_model;
TT_API tt_model *tt_model_create(tt_context *, const tt_model_config *, uint64_t seed);
TT_API tt_model *tt_model_copy(const tt_model *);
TT_API tt_status tt_model_assign(tt_model *to, const tt_model *from);
TT_API void      tt_model_destroy(tt_model *);

TT_API const tt_model_config *tt_model_config_get(const tt_model *);      /* resolved: defaults filled in */
TT_API tt_context *tt_model_context(const tt_model *);
TT_API int         tt_model_n_params(const tt_model *);                   /* number of parameter tensors  */
TT_API tt_tensor  *tt_model_param(const tt_model *, int index);           /* name is Hugging Face's       */
TT_API tt_tensor  *tt_model_param_find(const tt_model *, const char *name);
TT_API size_t      tt_model_size(const tt_model *);                       /* total number of weights      */
TT_API void        tt_model_zero_grad(tt_model *);

/* hidden [N,C] after the last norm; logits [N,V] of hidden rows; logprobs [batch n_targets] of the masked
 * tokens under softmax(logits / temperature), entropy_out (may be NULL) beside it. */
TT_API tt_tensor *tt_model_forward(tt_model *, const tt_batch *);
TT_API tt_tensor *tt_model_logits(tt_model *, tt_tensor *hidden);
TT_API tt_tensor *tt_model_logprobs(tt_model *, const tt_batch *, float temperature, tt_tensor **entropy_out);

/* A cache for this model's keys and values, of n_slots sequences with up to `capacity` positions. */
TT_API tt_kv_cache *tt_kv_cache_create(tt_model *, int n_slots, int capacity);

/* Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): the product of each target matrix gains
 * scale (x A^T) B^T with A [rank, in], B [out, rank]; scale = alpha / rank. B starts at zero, A from
 * U(-1, 1) / sqrt(in), as in peft. A target is a module's name or its last parts, as "q_proj", "mlp.c_proj"
 * or "model.layers.0.self_attn.q_proj". */
typedef struct tt_lora_desc {
    int rank;                               /* 0 = 8                                            */
    float alpha;                            /* 0 = 2 rank                                       */
    int use_rslora;                         /* 1: scale = alpha / sqrt(rank) (arXiv 2312.03732) */
    const char *const *target_modules;
    int n_target_modules;                   /* 0 = every matrix of every layer                  */
    uint64_t seed;                          /* of A                                             */
} tt_lora_desc;
/* Adds adapters after the model's parameters and freezes these: gradients, optimizers made from now on, and
 * their state know the adapters alone. Names are "MODULE.lora_A.weight" and "MODULE.lora_B.weight". On
 * failure nothing has changed. */
TT_API tt_status tt_model_lora_add(tt_model *, const tt_lora_desc *desc_or_null);
TT_API const tt_lora_desc *tt_model_lora_get(const tt_model *);     /* resolved; NULL without adapters */
/* Off, the model is its base: the reference policy, without a second copy. Returns whether they were on. */
TT_API int       tt_model_lora_enable(tt_model *, int on);
/* Adds the adapters' products to the matrices, removes them and makes the weights trainable again. Optimizers
 * made with the adapters must be gone. Weights mapped from a file cannot take them: use tt_model_load. */
TT_API tt_status tt_model_lora_merge(tt_model *);

/* ==== 8. files =============================================================================
 * A model on disk is a Hugging Face directory: config.json, model.safetensors (or shards with an index),
 * generation_config.json and the chat template (kept as they are), tokenizer.json. Every file is written to a
 * temporary name, synced and renamed. Before the first, all values are looked at: one that is not finite in
 * the type of the file is TT_ERR_NUMBER with the tensor's name, and all files stay as they were. That costs
 * one pass over the data (on a GPU, a download). Where the system can, safetensors files are read by mapping
 * them, from _open to _close and within any _load; a file that another program cuts short just then ends this
 * one by SIGBUS. */

/* Weights of a tied pair may be stored under either name; where both are there and differ, the pair is not
 * tied, as in transformers. All shapes are compared with config.json before memory is asked for. */
TT_API tt_model *tt_model_load(tt_context *, const char *dir);
/* The same for sampling and as a base of adapters: no weight requires a gradient, and those that need no
 * conversion stay in the file, mapped read-only: float32, layers' matrices of bf16 or f16, and embedding and
 * head of bf16 (on the CPU). Half precision is widened as it is used. The files must not be changed while the
 * model lives: one that another program cuts short ends this one by a signal, SIGBUS. Programs that run for
 * hours had better load. */
TT_API tt_model *tt_model_map(tt_context *, const char *dir);

typedef struct tt_save_desc {
    size_t max_shard_bytes;         /* a new file before a tensor that would pass this; 0 = one file       */
    tt_dtype dtype;                 /* of all weights: 0 = TT_F32, TT_BF16 or TT_F16, to nearest, ties even */
} tt_save_desc;

/* A model with adapters cannot be saved: merge them, or save them apart. The tokenizer may be NULL. */
TT_API tt_status tt_model_save(const tt_model *, const tt_tokenizer *, const char *dir);
TT_API tt_status tt_model_save_as(const tt_model *, const tt_tokenizer *, const char *dir,
                                  const tt_save_desc *);
/* Adapters as a directory of peft: adapter_config.json and adapter_model.safetensors. Load adds them to their
 * base, or fails and leaves the model as it was. */
TT_API tt_status tt_model_lora_save(const tt_model *, const char *dir);
TT_API tt_status tt_model_lora_load(tt_model *, const char *dir);
/* The format of the directory's chat template, for tt_chat_desc: "" if there is none, NULL and an error if
 * tt_chat_recognize does not know it. */
TT_API const char *tt_model_chat_format(const tt_model *);
TT_API tt_status tt_model_config_parse(tt_context *, const char *json, size_t size, tt_model_config *out);
TT_API tt_status tt_model_config_json(const tt_model_config *, tt_text *out);

/* Training state in one atomic safetensors file: any named long-lived tensors, all finite, and one JSON text
 * (counters, positions). Loading wants the same names and shapes, and changes nothing if it fails. metadata
 * "checksum" covers the text and the name and bytes of every tensor: a state that has changed on disk is
 * TT_ERR_FILE. It may be missing, as in files of other programs; whoever edits a state by hand removes it. */
typedef struct tt_named {
    const char *name;
    tt_tensor *tensor;
} tt_named;
TT_API tt_status tt_state_save(tt_context *, const char *path, const tt_named *, int n, const char *json);
TT_API tt_status tt_state_json(tt_context *, const char *path, tt_text *json_out);      /* the JSON alone */
TT_API tt_status tt_state_load(tt_context *, const char *path, const tt_named *, int n, tt_text *json_out);

/* Reading any safetensors file: tensors in file order, converted to float on read. */
typedef struct tt_safetensors tt_safetensors;
typedef struct tt_safetensors_info {
    const char *name;
    tt_dtype dtype;                 /* TT_I32 for all types that are not converted */
    int ndim;
    size_t shape[8], size;
} tt_safetensors_info;
TT_API tt_safetensors *tt_safetensors_open(tt_context *, const char *path);
TT_API void tt_safetensors_close(tt_safetensors *);
TT_API int tt_safetensors_count(const tt_safetensors *);
TT_API tt_safetensors_info tt_safetensors_info_get(const tt_safetensors *, int index);
TT_API int tt_safetensors_find(const tt_safetensors *, const char *name);                 /* -1 if absent   */
TT_API tt_status tt_safetensors_read(tt_safetensors *, int index, float *out);
TT_API const char *tt_safetensors_metadata(const tt_safetensors *, const char *key);      /* NULL if absent */

/* ==== 9. generate ===========================================================================
 * Continuous batching: a slot is refilled as its sequence ends; the samples of one prompt share its prefill,
 * and all prompts that of the tokens (32 or more) with which they all begin. The sequence of (request id,
 * sample) depends on nothing but model, prompt, settings and seed. */

struct tt_request;
typedef struct tt_sampling {
    int max_new_tokens;           /* 0 = 128                                                    */
    int greedy;                   /* 1 = most likely token, lowest id on a tie                  */
    float temperature;            /* divides the logits, 1e-30 or more; 0 = 1. Then, in this    */
                                  /* order, each on what the one before has left:               */
    int top_k;                    /* keep the k most likely, and what equals the last; 0 = all  */
    float top_p;                  /* drop the least likely, of equals the highest id first,     */
                                  /* that together have at most 1 - top_p; in (0,1]; 0 = 1, off */
    float min_p;                  /* drop tokens below min_p * the largest probability; 0 = off */
    float repetition_penalty;     /* Hugging Face's, before all of these; 0 = 1 (off)           */
    uint64_t seed;
    const int32_t *stop_tokens;   /* a sequence ends with (and includes) any of these           */
    int n_stop_tokens;
    int max_batch;                /* slots; 0 = 128, never more than there are sequences        */
    /* called for each token as it is sampled; non-zero stops everything with TT_ERR_STOP       */
    int (*on_token)(void *user, int request, int sample, int32_t token, float logprob);
    void *user;
    int keep_sampling_mask;       /* 1: completions tell among which tokens each was drawn      */
    /* A tool's or an environment's turn: called after each token with which the response goes on, with all of
     * it so far. The ids that it appends follow, as many as max_new_tokens leaves room for. */
    tt_status (*environment)(void *user, const struct tt_request *, const int32_t *response, int length,
                             tt_ids *out);
    void *environment_user;
} tt_sampling;
/* As the model's generation_config.json says: greedy unless do_sample is true, temperature, top_k, top_p,
 * min_p, repetition_penalty, and every token that ends a text. stop_tokens belongs to the model. */
TT_API tt_sampling tt_model_sampling(const tt_model *);
typedef struct tt_request {
    const int32_t *prompt;
    int prompt_length, n;         /* n samples; 0 = 1                                           */
    uint64_t id;                  /* names the random stream                                    */
} tt_request;
typedef struct tt_completion {
    int request, sample;
    int length, stopped;          /* tokens; 1 = ended by a stop token, 0 = by the limit        */
    int32_t *tokens;
    float *logprobs;              /* under softmax(logits / temperature), without the other controls */
    float *sampled_logprobs;      /* under what it was drawn from, with all of them; greedy: 0. Both NaN
                                     where the environment wrote                                     */
    tt_kept kept;                 /* with keep_sampling_mask and top_k, top_p or min_p               */
} tt_completion;
typedef struct tt_completions {
    tt_context *ctx;
    int n;
    tt_completion *items;
    size_t n_tokens;              /* of all items                                               */
} tt_completions;
/* out receives all samples, request by request. prompt + max_new_tokens must fit max_position_embeddings. */
TT_API tt_status tt_generate(tt_model *, const tt_request *requests, int n, const tt_sampling *,
                             tt_completions *out);
TT_API void      tt_completions_free(tt_completions *);

/* ==== 10. optimizer ========================================================================= */

/* With rates and decays up to here one update moves no weight by more than a few powers of ten. A weight that
 * is not finite is found by the next forward pass: its gradients are not, and tt_generate names the
 * position. */
#define TT_MAX_LR 100.0f
typedef struct tt_adamw_desc {
    float beta1, beta2, eps;      /* 0 = 0.9, 0.999, 1e-8                                         */
    float weight_decay;           /* decoupled; 0 = none; at most 100                             */
    int decay_all;                /* 1: also norms and biases (1-d tensors)                       */
    float max_grad_norm;          /* clip by global norm: g * min(1, c / (norm + 1e-6)); 0 = off  */
} tt_adamw_desc;
typedef struct tt_optimizer tt_optimizer;
typedef struct tt_optimizer_stats { double grad_norm; int skipped; long n_skipped, step; } tt_optimizer_stats;
/* For the parameters that require a gradient now. */
TT_API tt_optimizer *tt_adamw_create(tt_model *, const tt_adamw_desc *);
TT_API void          tt_optimizer_destroy(tt_optimizer *);
/* One update from the gradients, which are then zeroed. A parameter that no gradient reached has the gradient
 * 0: its moments and its decay go on. A non-finite gradient norm skips the update and is counted. */
TT_API tt_status     tt_optimizer_step(tt_optimizer *, float lr, tt_optimizer_stats *stats_or_null);
/* Those parameters, both moments and the counters, with the caller's JSON and further tensors (NULL, 0 =
 * none), through tt_state_save/load: what is not finite is not saved, and a load that fails has changed
 * nothing. json_out may be NULL. tt_optimizer_peek reads the JSON alone, so that it can be looked at before
 * anything is changed. */
TT_API tt_status tt_optimizer_save(tt_optimizer *, const char *path, const char *json, const tt_named *also,
                                   int n_also);
TT_API tt_status tt_optimizer_load(tt_optimizer *, const char *path, tt_text *json_out, const tt_named *also,
                                   int n_also);
TT_API tt_status     tt_optimizer_peek(tt_optimizer *, const char *path, tt_text *json_out);

typedef enum tt_schedule_type { TT_CONSTANT = 0, TT_LINEAR, TT_COSINE } tt_schedule_type;
typedef struct tt_schedule {
    float lr;
    int warmup_steps, total_steps;
    float min_lr;                 /* reached at total_steps by linear and cosine */
    tt_schedule_type type;
} tt_schedule;
/* Of step 0, 1, ...; during warm-up lr (step + 1) / warmup_steps. */
TT_API float tt_learning_rate(const tt_schedule *, int step);

/* ==== 11. grpo =============================================================================
 * Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) and its relatives; names and
 * formulas are those of TRL's GRPOTrainer and verl's core_algos. One update: responses become rollouts, each
 * gets a reward, the rewards of a group become advantages, and each micro-batch of rollouts a loss whose
 * denominators are those of the whole batch. */

#define TT_MAX_REWARDS 8

/* Who wrote a token; this decides its loss. */
typedef enum tt_token_kind {
    TT_KIND_PROMPT = 0,
    TT_KIND_STUDENT,        /* sampled by the student: the policy loss                                    */
    TT_KIND_GUIDED,         /* the student's, in a response that a teacher continued: the shaped loss     */
    TT_KIND_TEACHER,        /* a teacher's feedback: the shaped loss                                      */
    TT_KIND_OFF_POLICY,     /* of a response that came from elsewhere: LUFFY's loss                       */
    TT_KIND_ENVIRONMENT     /* a tool's or an environment's answer: no loss                               */
} tt_token_kind;

/* One prompt and one response. Arrays are owned by the tt_rollouts. */
typedef struct tt_rollout {
    int group, sample;                  /* prompt index in the batch, sample within the group             */
    uint64_t prompt_id;
    int prompt_length, response_length;
    int32_t *tokens;                    /* [prompt_length + response_length]                              */
    unsigned char *kind;                /* [prompt_length + response_length] tt_token_kind                */
    float *sampling_logprobs;           /* [response_length] under what the sampler drew from; NaN where it
                                           did not sample                                                 */
    float *old_logprobs, *ref_logprobs; /* [response_length] by the trainer; NULL until computed          */
    float *advantages;                  /* [response_length] of each token, in place of the response's; NULL =
                                           none: tt_rollout_advantages                                    */
    tt_kept kept;                       /* of the student's tokens: then their log-probs are under it     */
    int stopped;                        /* exactly one end token, at the very end                         */
    int guided;                         /* continued by a teacher                                         */
    int off_policy;                     /* written by the user: tt_rollout_off_policy                     */
    int attempt_length;                 /* guided: tokens before the feedback                             */
    float attempt_reward;               /* guided: reward of the response before the feedback             */
    double kl_cost;                     /* with kl_in_reward: beta KL(old, reference); NaN until computed */
    float rewards[TT_MAX_REWARDS];      /* NaN = abstains                                                 */
    float reward, advantage;            /* reward NaN: nobody scored it                                   */
} tt_rollout;

typedef struct tt_rollouts {
    tt_context *ctx;
    int n, n_groups, num_generations;
    int n_rewards;                      /* rewards in use, 1 after create                                 */
    tt_rollout *items;                  /* [n], group by group                                            */
    char **questions;                   /* [n_groups] what a teacher reads; NULL = the prompt's plain text */
    int share_prompts;                  /* 1: see tt_rollouts_batch; 0 after create                       */
} tt_rollouts;

/* From completions: requests[g] gave num_generations samples each. end_token decides what is .stopped. Where
 * a completion's logprobs are NaN the environment wrote. sampled_logprobs NULL: the same as logprobs. */
TT_API tt_status tt_rollouts_create(tt_context *, const tt_request *requests, int n_requests,
                                    const tt_completions *, int end_token, tt_rollouts *out);
TT_API tt_status tt_rollouts_question(tt_rollouts *, int group, const char *text);   /* copied */
/* A new response whose first attempt_length tokens are the old one's and whose others are a teacher's. */
TT_API tt_status tt_rollout_replace(tt_rollouts *, int index, const int32_t *response, int length,
                                    int attempt_length, int end_token);
/* A response that the student did not write takes the place of a sample (LUFFY, arXiv 2504.14945). It is
 * rewarded like any other; its tokens have the loss -A p / (p + luffy_gamma). */
TT_API tt_status tt_rollout_off_policy(tt_rollouts *, int index, const int32_t *response, int length,
                                       int end_token);
/* Advantages A_t of the tokens of a response, copied; every loss takes them in place of its A. NULL takes
 * them away. What is decided for a whole response (off_policy_mask_threshold) goes by its A still. */
TT_API tt_status tt_rollout_advantages(tt_rollouts *, int index, const float *advantages);
TT_API void      tt_rollouts_free(tt_rollouts *);

/* ---- choices: each has a row {name, formula, source} that tt_grpo_choice gives ---- */
typedef enum tt_advantage_type {   /* R: a response's reward; mean, std: of its group                      */
    TT_ADV_GRPO = 0,               /* (R - mean) / (std + eps); with TT_SCALE_NONE Dr.GRPO                 */
    TT_ADV_RLOO,                   /* R - mean of the others                                               */
    TT_ADV_OPO,                    /* R - mean weighted by response length                                 */
    TT_ADV_PASSK,                  /* the best gets (best - second) / (std + eps), all others 0            */
    TT_ADV_REINFORCE_PP_BASELINE,  /* R - mean, then whitened over all tokens of the batch                 */
    TT_ADV_GPG,                    /* (R - mean) * responses / responses with R != 0                       */
    TT_ADV_REINFORCE_PP,           /* R, then whitened over all tokens of the batch                        */
    TT_ADV_GDPO,                   /* sum of weight * (R_k - mean) / std of each reward, standardised over
                                      the batch */
    TT_ADV_LUFFY                   /* as GRPO, mean and std of the group's on-policy responses             */
} tt_advantage_type;
typedef enum tt_scale_rewards { TT_SCALE_GROUP = 0, TT_SCALE_BATCH, TT_SCALE_NONE } tt_scale_rewards;
typedef enum tt_loss_type {        /* r = p / p_old of the token, A its advantage                          */
    TT_LOSS_PPO_CLIP = 0,          /* max(-A r, -A clip(r, 1 - epsilon_low, 1 + epsilon_high))             */
    TT_LOSS_CISPO,                 /* -sg(min(r, cispo_epsilon_max)) A log p                               */
    TT_LOSS_CISPO_CLAMP,           /* verl's: -sg(clip(r, 1 - epsilon_low, 1 + epsilon_high)) A log p      */
    TT_LOSS_REINFORCE,             /* -A log p                                                             */
    TT_LOSS_GSPO,                  /* PPO_CLIP of the response's geometric mean of r                       */
    TT_LOSS_GSPO_TOKEN,            /* verl's: the same, its logarithm at most 10                           */
    TT_LOSS_GMPO,                  /* -A times the geometric mean of r, each clipped by exp(+-epsilon)     */
    TT_LOSS_RLOO                   /* PPO_CLIP of the response's product of r                              */
} tt_loss_type;
/* Weight of a token; n: tokens of its response in the loss. A loss of the whole response stands for each of
 * its tokens: TT_SEQ_MEAN_TOKEN_MEAN then gives the mean over responses. */
typedef enum tt_aggregation {
    TT_TOKEN_MEAN = 0,             /* 1 / all tokens: verl token-mean, TRL dapo                            */
    TT_SEQ_MEAN_TOKEN_MEAN,        /* 1 / (n * responses): TRL grpo                                        */
    TT_SEQ_MEAN_TOKEN_SUM,         /* 1 / non-empty responses: verl                                        */
    TT_DR_GRPO,                    /* 1 / (responses * max_completion_length)                              */
    TT_SEQ_MEAN_FILLED,            /* 1 / ((n + 1e-8) * non-empty responses): verl seq-mean-token-mean     */
    TT_SEQ_SUM_NORM,               /* 1 / longest response: verl seq-mean-token-sum-norm                   */
    TT_LUSPO,                      /* 1 / responses: TRL luspo                                             */
    TT_BNPO,                       /* 1 / tokens of the MICRO-batch: TRL bnpo; depends on how the batch is
                                      split */
    TT_TOKEN_SUM                   /* 1: verl token-sum                                                    */
} tt_aggregation;
typedef enum tt_kl_type {          /* x = log p_ref - log p                                                */
    TT_KL_K3 = 0,                  /* e^x - x - 1                                                          */
    TT_KL_K1,                      /* -x                                                                   */
    TT_KL_K2,                      /* x^2 / 2                                                              */
    TT_KL_K3_CLAMP,                /* k3 at most 10, x within +-20: verl low_var_kl                        */
    TT_KL_K3_RATIO                 /* r k3: TRL use_bias_correction_kl                                     */
} tt_kl_type;
/* Weight w = p_old / p_sampler of the policy loss where sampler and trainer disagree
 * (top-p, another engine). */
typedef enum tt_mismatch {
    TT_MISMATCH_OFF = 0,
    TT_MISMATCH_TOKEN_TRUNCATE, /* w of the token, within [mismatch_low, mismatch_high]                 */
    TT_MISMATCH_TOKEN_MASK,     /* w of the token, 0 outside                                            */
    TT_MISMATCH_SEQ_TRUNCATE,   /* product of w over the response, within the bounds                    */
    TT_MISMATCH_SEQ_MASK,       /* product of w over the response, 0 outside                            */
    TT_MISMATCH_GEOMETRIC_MASK /* w of the token, 0 in responses whose geometric mean of w is outside it */
} tt_mismatch;
/* Shaping of guided tokens */
typedef enum tt_aas { TT_AAS_RELEASED = 0, TT_AAS_FORMULA, TT_AAS_LUFFY, TT_AAS_OFF } tt_aas;

typedef struct tt_choice { const char *name, *formula, *source; } tt_choice;
/* Row number `value` of the config's field "advantage", "loss", "aggregation", "kl", "mismatch" or "aas";
 * NULL beyond the last. tt_grpo_choose reads a name; an unknown one is an error that lists those that are
 * known. */
TT_API const tt_choice *tt_grpo_choice(const char *field, int value);
TT_API tt_status tt_grpo_choose(tt_context *, const char *field, const char *name, int *value);

/* ---- a loss of your own: a function of one token ---- */
struct tt_grpo_config;
typedef struct tt_loss_input {
    const struct tt_grpo_config *config;   /* resolved                                                    */
    void *user;                     /* token_loss_user of the config                                      */
    double logp, old_logp;          /* log-probs of the token now and at the rollout                      */
    double log_ratio;               /* logp - old_logp; of GSPO, GMPO, RLOO the mean or sum of the
                                       response's */
    double ratio, dratio;           /* exp(log_ratio), kept within exp(+-20); its slope by logp, 0 at a
                                       bound */
    double response_log_ratio;      /* sum of the log_ratio of the response's own tokens, each within +-20 */
    double advantage;               /* of the token                                                       */
    const tt_rollout *rollout;      /* whose token it is; NULL: it stands alone                           */
    size_t index;                   /* of the token among the response tokens of the micro-batch          */
} tt_loss_input;
typedef struct tt_token_loss {      /* zeros at first, factor 1                                           */
    double loss, dloss;             /* and its slope by logp                                              */
    double kl;                      /* to the reference                                                   */
    double factor;                  /* what shaping made of p / p                                         */
    int clipped_low, clipped_high, clipped_dual;   /* which bound has cut the gradient                    */
    int fallback;                   /* a guided token that took the policy loss                           */
} tt_token_loss;
typedef void (*tt_token_loss_fn)(const tt_loss_input *in, tt_token_loss *out);

typedef struct tt_loss_batch tt_loss_batch;

typedef struct tt_grpo_config {
    int num_generations;           /* G; 0 = 8                                                             */
    int max_completion_length;     /* 0 = 128                                                              */
    float temperature;             /* 0 = 1                                                                */
    int top_k;                     /* of sampling, as in tt_sampling; no part of the trained log-prob, so that
                                      p_old / p_sampler is not 1, but with keep_sampling_mask              */
    float top_p, min_p;
    int keep_sampling_mask;        /* 1: training renormalises over the tokens that each was drawn from, as
                                      DeepSeek-V3.2, arXiv 2512.02556, sec. 3.1; CPU only                  */
    float epsilon_low, epsilon_high;   /* 0 = 0.2; GMPO 0.4                                                */
    float dual_clip;               /* bound c of the ratio for A < 0; 0 = 3, negative = off                */
    float delta;                   /* two-sided clip; 0 = off                                              */
    float beta;                    /* KL to the reference; 0 = off                                         */
    float entropy_coef;            /* bonus; 0 = off                                                       */
    float cispo_epsilon_max;       /* 0 = 5                                                                */
    float advantage_eps;           /* 0 = 1e-6 (verl, paper); TRL 1e-4                                     */
    int biased_std;                /* 1: variances divide by n, not n - 1                                  */
    int keep_single;               /* 1: a group of one keeps R (mean 0, std 1: verl); 0: gets 0           */
    tt_advantage_type advantage;
    tt_scale_rewards scale_rewards;
    tt_loss_type loss;
    tt_token_loss_fn token_loss;   /* in place of `loss` for the student's tokens; NULL = none             */
    tt_token_loss_fn off_policy_loss;    /* in place of LUFFY's for off-policy tokens; NULL = none         */
    void *token_loss_user;         /* of both                                                              */
    /* Called before the tokens of a micro-batch, with all of its log-probs (for losses that rank tokens);
       NULL = none. */
    tt_status (*token_loss_begin)(void *user, const struct tt_grpo_config *, const tt_loss_batch *,
                                  const float *logprobs);
    tt_aggregation aggregation;
    tt_kl_type kl;
    int kl_in_reward;              /* 1: beta KL(old, reference) is taken from the reward, not added to the
                                      loss */
    int mask_truncated_completions;    /* 1: responses without end token leave the loss                    */
    int overlong_cache;            /* c: tokens before max_completion_length L in which the reward falls by
                                      (n - L + c) / c (DAPO); 0 = off                                      */
    float overlong_factor;         /* times this, without a floor: verl; 0 = TRL: -1 at most               */
    tt_mismatch mismatch;
    float mismatch_low, mismatch_high;   /* 0 = none, 2 (masks: 3)                                         */
    float off_policy_mask_threshold;     /* responses with A < 0 and mean(log p_sampler - log p) above this
                                            leave the policy loss (DeepSeek-V3.2); 0 = off                 */
    /* Policy loss and entropy bonus of this share of the tokens alone, those of the highest entropy (Beyond
     * the 80/20 rule, arXiv 2506.01939: 0.2); the denominators stay. TRL's threshold: a quantile over the
     * MICRO-batch. 0 = 1: all */
    float top_entropy_quantile;
    int num_iterations;            /* passes over a rollout batch; 0 = 1                                   */
    int num_mini_batches;          /* updates in a pass, each on as many whole groups; 0 = 1               */
    int dynamic_sampling;          /* groups of equal rewards are sampled anew from other questions, at most
                                      so many times (DAPO); 0 = off                                        */
    int micro_batch_tokens;        /* tokens of one forward/backward, to which its memory is proportional;
                                      0 = 8192 */
    int share_prompts;             /* 1: what prompts have in common is computed once in a micro-batch, see
                                      tt_rollouts_batch; on the CPU alone; 0 = off                         */
    /* ThinkTuning's Advantage-Aware Shaping, for tokens of the kinds guided and teacher */
    tt_aas aas;
    float gamma_min, gamma_max, advantage_min, advantage_max;   /* all 0 = 0.001, -0.001, -4, 4            */
    float luffy_gamma;             /* 0 = 0.1; negative: the loss is -A p, unshaped                        */
    float fallback_p;              /* A < 0 and p below this: the policy loss; 0 = 0.01, negative = off    */
} tt_grpo_config;

TT_API tt_grpo_config tt_grpo_resolve(const tt_grpo_config *);                 /* defaults filled in */
/* An error names field, value and range */
TT_API tt_status tt_grpo_check(tt_context *, const tt_grpo_config *);

/* Means over the tokens of the whole optimizer batch: each tt_grpo_loss adds its micro-batch's part. Start
 * from zero. */
typedef struct tt_grpo_metrics {
    double loss, entropy, kl, ppo_kl, clip_low, clip_high, clip_dual;
    double aas_fallback_share, aas_factor_mean, aas_factor_max;
    double sampling_logp_difference_max;
    double mismatch_mean, mismatch_deviation_max;   /* of the weights w; largest |w - 1|; 1 and 0 where
                                                       sampler and trainer agree */
    /* p_old / p_sampler before any bound, 1 where nobody sampled; outside: share beyond [0.9, 1.1] */
    double ratio_mean, ratio_min, ratio_max, ratio_outside;
    double reward, reward_std, frac_reward_zero_std;
    double rewards[TT_MAX_REWARDS], overlong, reward_kl;   /* means: of each reward, what the length cost,
                                                              beta KL */
    double n_unscored;             /* responses that nobody scored                                         */
    double n_tokens, n_guided_tokens;
} tt_grpo_metrics;

/* reward = sum of rewards[k] * weights[k] (NULL = 1), less the cost of length and KL. A NaN abstains; a
 * response that nobody scores gets NaN. An infinite reward is an error naming prompt and sample.
 * tt_grpo_advantages begins with this. */
TT_API tt_status tt_grpo_rewards(tt_rollouts *, const tt_grpo_config *, const float *reward_weights,
                                 tt_grpo_metrics *);
/* What the length adds to the reward, <= 0 */
TT_API double    tt_grpo_overlong(const tt_grpo_config *, int response_length);
/* Of those that have a reward */
typedef struct tt_reward_stats { int n, equal; double mean, std; } tt_reward_stats;
TT_API tt_reward_stats tt_group_rewards(const tt_rollouts *, int group);
/* Rewards, then advantages. A response that nobody scores gets 0 and leaves the statistics. Equal rewards in
 * a group, and groups of one, give exactly 0 (before REINFORCE++'s whitening). */
TT_API tt_status tt_grpo_advantages(tt_rollouts *, const tt_grpo_config *, const float *reward_weights,
                                    tt_grpo_metrics *);

/* One token of kind student, guided, teacher or off-policy: its loss, in double. ref_logp NaN = no reference.
 * Losses of a response take the token as a response of one. */
TT_API tt_token_loss tt_grpo_token_loss(const tt_grpo_config *, double logp, double old_logp, double ref_logp,
                                        double advantage, tt_token_kind kind);

/* Packs rollouts[indices[0..n)] into a batch whose targets are the response tokens; indices NULL = all, n
 * ignored. With share_prompts what all their prompts begin with, and the prompt of neighbours with the same
 * one, stand in it once: the log-probs keep their bits, gradients are summed in another order. */
TT_API tt_batch  *tt_rollouts_batch(tt_context *, const tt_rollouts *all, const int *indices, int n);
/* Tokens that rollout i adds to a batch of rollouts from `begin` on; what a group shares counts once. */
TT_API int        tt_rollouts_tokens(const tt_rollouts *all, int begin, int i);
/* Scoring what is written already, by any model, behind any context. */
typedef struct tt_scoring {
    tt_model *model;                    /* the student, a teacher, a moving average                        */
    float temperature;                  /* 0 = 1                                                           */
    const tt_request *contexts;         /* [n] prompt and prompt_length stand in the place of the prompt;
                                           length 0: this one is not scored. NULL = the prompts            */
    int skip_long;                      /* 1: where a context leaves no room for its response, this one is not
                                           scored, but counted; 0 = an error that names the lengths        */
    int micro_batch_tokens;             /* tokens of one forward pass; 0 = 8192                            */
} tt_scoring;
/* log p(token | context, response before it) of each response token, without gradients: out has them end to
 * end, response by response, NaN where it was not scored. The op is that of training, so equal contexts,
 * models and temperatures give equal bits. Ends the step (tt_step_reset). n_skipped may be NULL. */
TT_API tt_status  tt_rollouts_logprobs(const tt_rollouts *, const tt_scoring *, float *out, int *n_skipped);
/* What the weights of tokens divide by, over an optimizer batch. Those of several processes: sums, and the
 * largest longest. */
typedef struct tt_loss_totals { double tokens, guided, sequences, filled, longest; } tt_loss_totals;
TT_API tt_loss_totals tt_grpo_totals(const tt_rollouts *, const tt_grpo_config *);
/* A micro-batch: rollouts[indices[0..n)] of the optimizer batch; indices NULL = all, n ignored. */
struct tt_loss_batch {
    const tt_rollouts *rollouts;
    const int *indices;
    int n;
    const tt_loss_totals *totals;       /* NULL = tt_grpo_totals(rollouts, config)                         */
};
/* Policy loss of a micro-batch in one graph, a scalar; micro-batch losses add up to the batch's. logprobs,
 * entropy: tt_model_logprobs of tt_rollouts_batch. old_logprobs NULL in a rollout = the current value (one
 * update per batch, ratio 1). */
TT_API tt_tensor *tt_grpo_loss(tt_context *, tt_tensor *logprobs, tt_tensor *entropy, const tt_loss_batch *,
                               const tt_grpo_config *, tt_grpo_metrics *);

/* ==== 12. think ============================================================================
 * ThinkTuning (RRV et al., EMNLP 2025, arXiv 2508.07616): a teacher of the same size reads some of the
 * student's responses and continues them with feedback in the first person; the guided response takes
 * the place of the original in its group. */

typedef struct tt_attempt {
    const char *question, *response;
    size_t question_size, response_size;
    int rollout;
} tt_attempt;
typedef struct tt_feedback {           /* filled by the teacher                                             */
    tt_text reason, phrase, opinion;   /* appended to; or data and size set to a text of the teacher's own,
                                          which is lent */
    int n_tokens;                      /* that it sampled; 0 = not known, then those that are appended
                                          count */
} tt_feedback;
typedef struct tt_teacher {
    tt_status (*feedback)(void *user, const tt_attempt *attempts, int n, tt_feedback *out);
    void *user;
} tt_teacher;

/* The paper's teacher: a model under a prompt. The template's {question} and {response} are replaced; special
 * tokens in the template are parsed, in question and response read as plain text; it begins as in
 * tt_encode_prompt. Decoding is greedy by default. An attempt whose prompt fills the context gets no
 * feedback; that none has room is an error. */
typedef struct tt_teacher_prompt {
    const char *prompt_template;  /* NULL = "Question:\n{question}\n\nResponse:\n{response}"               */
    const char *system;           /* put before it (format, worked examples); NULL = none                 */
    const char *examples_path;    /* worked examples from a text file, after system; NULL = none          */
    const char *example_template; /* NULL =
                                     "Question:\n{question}\n\nResponse:\n{response}\n\n{feedback}\n\n" */
    const char *stop_token;       /* text of the token that ends the feedback; required                   */
    int close_tags;               /* 1: a tag in which the feedback ends is closed there, for small models
                                     that forget it;
                                   * 0 = it is missing, as in the paper                                   */
    int max_new_tokens;           /* 0 = 1024                                                             */
    int max_batch;
} tt_teacher_prompt;
typedef struct tt_model_teacher tt_model_teacher;
/* The examples file, plain text: lines before the first [section] are ignored; [system] holds the
 * instruction; each of [self-agreement], [self-conflict], [self-consultation], [self-critique], as often as
 * you like, one worked example in three parts that follow the lines "Question:", "Response:" and "Feedback:".
 * White space around parts is cut. The model decides what kind of teacher it is: a tt_model_copy of the base
 * is frozen, the student itself is the current one, another model another one; see also tt_teacher_follow. */
/* Model and tokenizer are lent */
TT_API tt_model_teacher *tt_model_teacher_create(tt_model *, const tt_tokenizer *, const tt_teacher_prompt *);
TT_API void       tt_model_teacher_destroy(tt_model_teacher *);
TT_API tt_teacher tt_teacher_model(tt_model_teacher *);
/* All that it reads */
TT_API tt_status tt_teacher_prompt_text(const tt_model_teacher *, const char *question, const char *response,
                                        tt_text *out);
/* A teacher that follows its student: weights = decay * weights + (1 - decay) * those of the student. 0 <=
 * decay <= 1. */
TT_API tt_status  tt_teacher_follow(tt_model *teacher, const tt_model *student, float decay);
/* The last <name>...</name> in text; 0 and empty if a tag is missing. begin and length point into text. White
 * space around is trimmed, but for one space right before the first word: it belongs to that word's token. */
TT_API int tt_think_tag(const char *text, size_t size, const char *name, const char **begin, size_t *length);

typedef enum tt_think_schedule {
    TT_THINK_LINEAR = 0,
    TT_THINK_CONSTANT,
    TT_THINK_COSINE,
    TT_THINK_EXP
} tt_think_schedule;
typedef enum tt_think_mask { TT_MASK_WHOLE = 0, TT_MASK_APPENDED } tt_think_mask;
typedef struct tt_think_config {
    float init_pct, min_pct;      /* 0 = 0.1, 0.01                                                    */
    float off_eps;                /* teacher off for good at the first step with pct <= off_eps + 0.01; 0 =
                                     0.05, negative = never off */
    int total_steps;              /* T of the schedule, required; min_pct is reached after max(1, T/3)
                                     steps */
    tt_think_schedule schedule;
    tt_think_mask mask;
    const char *separator;        /* between response, reason and phrase; NULL = "\n\n"               */
    uint64_t seed;                /* of the selection                                                 */
    /* Another way to use feedback: behind this template, filled with {question}, {response}, {reason} and
     * {phrase}, the student answers anew. The new answer joins its group as an off-policy response to the
     * question alone (Critique-GRPO, arXiv 2506.03106; RLTF, arXiv 2602.02482): one of the last max(1,
     * floor(num_generations pct)) samples, at most half of them, gives way; the attempt stays. Its guided is
     * 1, its attempt_reward that of the attempt. NULL = feedback is appended. */
    const char *refine;
} tt_think_config;
typedef struct tt_think_metrics {
    double pct;
    int n_guided, n_eligible;
    double guided_share, teacher_accuracy, rescue_rate, spoil_rate;   /* from rewards; see tt_think_score */
    double guided_reward, own_reward;                                 /* mean reward of guided responses,
                                                                         and of the student's own */
    double teacher_tokens;                                            /* sampled by the teacher */
    double n_cut;                                                     /* guided responses that
                                                                         max_completion_length cut: their
                                                                         feedback is lost in part, and the
                                                                         end token */
    int longest_guided;                                               /* tokens of the longest one before
                                                                         the cut, on this rank: the length
                                                                         that would do */
    double n_skipped;                                                 /* refine: attempts that left no
                                                                         room for an answer */
} tt_think_metrics;
TT_API double    tt_think_pct(const tt_think_config *, int step);      /* of the schedule */
TT_API int       tt_think_active(const tt_think_config *, int step);   /* 0 once the teacher is off */
typedef struct tt_augment {
    const tt_teacher *teacher;
    const tt_tokenizer *tokenizer;
    int end_token;
    int max_completion_length;    /* a guided response is cut there                                   */
    int step;                     /* of the schedule and of the random selection                      */
    tt_model *student;            /* refine: who answers anew, so hot (0 = 1), in so many slots (0 = 128) */
    float temperature;
    int max_batch;
} tt_augment;
/* Selects per group k = max(1, floor(eligible * pct)) stopped responses without replacement, asks the
 * teacher, replaces them in place (cut at max_completion_length, and counted: n_cut) and sets kind, guided,
 * attempt_length. Rewards come afterwards. What the teacher says is bytes of any kind and length; a reason or
 * phrase whose data is NULL is empty. */
TT_API tt_status tt_think_augment(tt_rollouts *, const tt_augment *, const tt_think_config *,
                                  tt_think_metrics *);
/* After the rewards: the rates. A response is right if its first reward is above one half. */
TT_API void      tt_think_score(const tt_rollouts *, tt_think_metrics *);

/* ==== 13. train ============================================================================
 * A task asks questions and rewards responses. The trainer turns questions into prompts, prompts into
 * rollouts, rollouts (after a teacher's feedback) into rewards, advantages, gradients and updates. What it is
 * made of is public too, for training and evaluation of your own. */

/* What a reward function is given. */
typedef struct tt_reward_input {
    const char *question, *answer, *response;   /* NUL-terminated; response without its end token */
    size_t response_size;
    int stopped;                                /* exactly one end token, at the very end         */
    const int32_t *tokens;                      /* [n_tokens] of the response, with its end token */
    int n_tokens;
    int prompt, sample;                         /* which it is, for errors                        */
} tt_reward_input;

/* What a response did: is there a first attempt at an answer, was it right, was the final answer, and which
 * reflection stands between. One that begins to check before it has attempted anything has nothing to reflect
 * on: it works before it answers. */
typedef enum tt_behaviour {
    TT_NO_REFLECTION = 0, TT_SELF_AGREEMENT, TT_SELF_CONFLICT, TT_SELF_CONSULTATION, TT_SELF_CRITIQUE,
    TT_WORKS_FIRST, TT_N_BEHAVIOURS
} tt_behaviour;
typedef struct tt_outcome {
    int final_right, attempted, first_right, reflects;
    tt_behaviour behaviour;
} tt_outcome;

/* Where prompts come from and what a response is worth. Texts are appended to tt_text. */
typedef struct tt_task {
    const char *name;
    /* question number `index` of a split (0 train, 1 held out) and its gold answer; any index is valid */
    tt_status (*question)(void *user, int split, uint64_t index, tt_text *question, tt_text *answer);
    tt_status (*reward)(void *user, const tt_reward_input *in, float *reward);   /* NaN = abstain */
    /* behaviour of a response: see tt_outcome; NULL = the default: it reflects from the first "wait",
     * "check", "verify" or "mentor" on; what stands before is an attempt if `extract` finds an answer in it;
     * the reward judges both, and words tell the behaviour */
    tt_status (*judge)(void *user, const tt_reward_input *in, tt_outcome *out);
    const char *prompt_template;   /* around {question}: "<user>{question}<student>"; see tt_encode_prompt */
    const char *end_token;         /* text of the token that ends a response                           */
    void *user;
    /* appends the final answer in a form in which equal answers are equal texts, for maj@k; nothing = no
     * answer; NULL = \boxed{...}, what follows "####", or the last number */
    tt_status (*extract)(void *user, const tt_reward_input *in, tt_text *answer);
    /* how many questions a split has, index i being i % count: tt_trainer_create then reads them all, and
     * refuses by name one whose prompt leaves no room for max_completion_length; NULL = without end: such a
     * prompt is an error of the step that draws it */
    int (*count)(void *user, int split);
} tt_task;

/* A reward beside the task's. A reward function that fails (but for TT_ERR_STOP and TT_ERR_MEM) or returns an
 * infinity abstains from that response; this is counted and logged. Only if nobody scores any response does
 * the step fail. */
typedef struct tt_reward {
    const char *name;              /* rewards/<name>/mean in the metrics; lent                 */
    tt_status (*reward)(void *user, const tt_reward_input *in, float *reward);
    void *user;
    float weight;                  /* 0 = 1                                                    */
    int log_only;                  /* 1: measured, not added                                   */
} tt_reward;

/* ---- for training and evaluation of your own: questions as prompts, responses judged ---- */

/* n questions of a task as requests of tt_generate. Set requests[i].n and .id; the prompts live here. */
typedef struct tt_prompts {
    tt_context *ctx;
    const tt_task *task;           /* lent */
    const tt_tokenizer *tokenizer; /* lent */
    int n;
    tt_request *requests;          /* [n] */
    /* private */
    tt_text texts;                 /* questions and answers, each with a NUL                   */
    tt_ids ids;                    /* all prompts end to end                                   */
    size_t *at;                    /* [n][3] where question, answer and ids begin              */
} tt_prompts;
TT_API tt_status tt_prompts_create(tt_context *, const tt_task *, const tt_tokenizer *, int n,
                                   tt_prompts *out);
/* Question `number` of a split in place i, also again. */
TT_API tt_status   tt_prompts_set(tt_prompts *, int i, int split, uint64_t number);
TT_API const char *tt_prompts_question(const tt_prompts *, int i);
TT_API const char *tt_prompts_answer(const tt_prompts *, int i);
/* in has tokens, n_tokens, stopped and sample; the rest is filled, response receives the text. */
TT_API tt_status   tt_prompts_input(const tt_prompts *, int i, tt_text *response, tt_reward_input *in);
TT_API void        tt_prompts_free(tt_prompts *);
/* Are model, tokenizer and task complete, and made for each other? An error names who asks. */
TT_API tt_status tt_task_check(tt_model *, const tt_tokenizer *, const tt_task *, const char *who,
                               int *end_token);

/* How many calls have failed, and the first of them. Start from zero; NULL = not counted. */
typedef struct tt_reward_errors { int n; tt_status status; char text[512]; } tt_reward_errors;
/* A call that fails, or gives an infinity, counts as NaN; TT_ERR_STOP and TT_ERR_MEM are passed on. */
TT_API tt_status tt_reward_call(tt_context *, const tt_reward *, const tt_reward_input *, tt_reward_errors *,
                                float *out);
/* What a response with that reward of the task did; nothing if the reward is NaN or the judge fails. */
TT_API tt_status tt_judge(tt_context *, const tt_task *, const tt_reward_input *, float reward,
                          tt_reward_errors *, tt_outcome *out);
/* Sums of outcomes, and the rates that they make. */
typedef struct tt_tally {
    double n, right, attempts, first, reflects, corrected, spoiled, length, stopped;
    double behaviour[TT_N_BEHAVIOURS];
} tt_tally;
typedef struct tt_rates {
    double accuracy;
    double attempt_rate, first_accuracy;        /* has a first attempt; has one that is right  */
    double reflection_rate;        /* looks at its attempt again                               */
    double correction_rate;        /* right at the end, of those whose first attempt was wrong */
    double spoil_rate;             /* wrong at the end, of those whose first attempt was right */
    double mean_length, stopped_rate, behaviour[TT_N_BEHAVIOURS];
} tt_rates;
TT_API void        tt_tally_add(tt_tally *, const tt_outcome *, int length, int stopped);
TT_API tt_rates    tt_tally_rates(const tt_tally *);

/* Ready-made beside the header, in examples/: tasks.h (tt_signs_*, tt_puzzles_*, tt_jsonl_*), rewards.h
 * (tt_reward_*, tt_answer_*) and evaluate.h (tt_evaluate, tt_bootstrap, tt_pass_at_k, ...). A program
 * includes them behind this file. */

/* ---- more than one process ----
 * The same program runs as several ranks, over MPI or whatever fills the hook. A batch is cut into n_parts
 * parts of which rank r has its consecutive n_parts / world_size. For each of them: backward of a loss whose
 * denominators are those of ALL parts, then tt_reducer_add; tt_reducer_sum then leaves the sum over all parts
 * of all ranks in the gradients of the model. The parts are summed as a binary tree, and a hook that sums 2,
 * 4, 8, ... ranks in the same way goes on with it: runs with equal n_parts give the same bits at any number
 * of ranks. That costs a copy of the gradients for each halving of a rank's parts, and matrix products of one
 * part each. */
typedef struct tt_reducer_desc {
    tt_model *model;               /* lent                                                     */
    /* sums data[0..n), memory of the backend, over all ranks in place, the same bits on every rank;
     * NULL = one process */
    tt_status (*allreduce)(void *user, float *data, size_t n);
    void *user;
    int rank, world_size;          /* world_size 0 = 1                                         */
    int n_parts;                   /* a power of two and a multiple of world_size; 0 = world_size, whatever
                                      that is */
} tt_reducer_desc;
typedef struct tt_reducer tt_reducer;
/* For the parameters that require a gradient now. */
TT_API tt_reducer *tt_reducer_create(tt_context *, const tt_reducer_desc *);
TT_API void        tt_reducer_destroy(tt_reducer *);
TT_API const tt_reducer_desc *tt_reducer_desc_get(const tt_reducer *);         /* resolved */
TT_API tt_status   tt_reducer_add(tt_reducer *);
TT_API tt_status   tt_reducer_sum(tt_reducer *);
/* all[rank * n + i] = mine[i] of each rank, exactly (within the range of float; NaN and infinities too). */
TT_API tt_status   tt_reducer_gather(tt_reducer *, const double *mine, int n, double *all);

/* The hook over NCCL, in tt_cuda.cu compiled with TT_CUDA_NCCL: one process a GPU, the sum stays on the
 * devices. Rank 0 makes an id and brings it to the others by its own means (examples/parallel_nccl.h: MPI);
 * then all create together. ordered = 1: ranks are summed as the tree above; 0: in NCCL's own order, faster,
 * the same bits at equal ranks and machines. The hook's user is the tt_nccl. NULL, or TT_ERR_DEVICE with
 * NCCL's reason, on failure. Not a word reaches the host. */
#define TT_NCCL_ID_BYTES 128
typedef struct tt_nccl tt_nccl;
extern tt_status tt_nccl_id(tt_context *, char id[TT_NCCL_ID_BYTES]);
extern tt_nccl *tt_nccl_create(tt_context *, const char id[TT_NCCL_ID_BYTES], int rank, int world_size,
                               int ordered);
extern void      tt_nccl_destroy(tt_nccl *);
extern tt_status tt_nccl_allreduce(void *nccl, float *data, size_t n);

/* ---- the trainer ---- */

/* Updates in a row that are left out before a run is given up, unless it says otherwise. */
enum { TT_MAX_SKIPPED = 10 };

typedef struct tt_trainer_desc {
    tt_model *model;               /* the student; lent                                        */
    const tt_tokenizer *tokenizer;
    const tt_task *task;
    const tt_reward *rewards;      /* further ones; copied                                     */
    int n_rewards;                 /* at most TT_MAX_REWARDS - 1                               */
    float task_weight;             /* of the task's own reward; 0 = 1                          */
    tt_grpo_config grpo;
    const tt_teacher *teacher;     /* NULL = plain GRPO                                        */
    tt_think_config think;
    tt_model *reference;           /* for beta > 0; NULL = the model itself with its adapters
                                      off, or a frozen copy if it has none                     */
    int measure_kl;                /* 1: the metric kl also with beta 0, at the cost of a
                                      forward pass of the reference                            */
    const tt_named *also;          /* tensors of your own that are saved and loaded with the trainer; lent */
    int n_also;
    /* Responses of your own (LUFFY): appends the text of number k for the question; nothing appended = none.
     * The last n_off_policy samples of each group give way to them. */
    tt_status (*off_policy)(void *user, const char *question, const char *answer, int k, tt_text *response);
    void *off_policy_user;
    int n_off_policy;              /* 0 = 1 with off_policy; fewer than num_generations        */
    /* Called between the advantages of a step and its updates, with the rank's own rollouts and the questions
     * of their groups: may give tokens advantages (tt_rollout_advantages), or responses other ones, or set
     * the kind of tokens to TT_KIND_ENVIRONMENT, which takes them out of the loss. See examples/feedback.h */
    tt_status (*advise)(void *user, const tt_prompts *, tt_rollouts *);
    void *advise_user;
    /* A tool's or an environment's turn: see tt_sampling */
    tt_status (*environment)(void *user, const tt_request *, const int32_t *response, int length,
                             tt_ids *out);
    void *environment_user;
    /* After so many steps in a row with an update skipped, a mean reward <= abort_reward or a mean entropy <
     * abort_entropy, tt_trainer_step gives its metrics and TT_ERR_STOP with the reason in tt_error. */
    int abort_patience;            /* 0 = never, but for skipped updates: after TT_MAX_SKIPPED; -1 = never */
    float abort_reward;            /* 0 = 0                                                    */
    float abort_entropy;           /* 0 = 0.001                                                */
    tt_adamw_desc adamw;
    tt_schedule schedule;
    int prompts_per_step;          /* 0 = 16                                                   */
    int max_batch;                 /* sampler slots; 0 = 128                                   */
    uint64_t seed;
    /* More than one process, see tt_reducer_desc. A prompt's group stays on one rank; rollouts, advantages
     * and denominators are those of one process, and so are the metrics; the rollouts at hand are the rank's
     * own. The gradients are summed as one buffer. After a failed step the other ranks still wait: end the
     * job. */
    tt_status (*allreduce)(void *user, float *data, size_t n);
    void *allreduce_user;
    int rank, world_size;          /* world_size 0 = 1; divides the prompts of a mini-batch    */
    int gradient_parts;            /* n_parts of each mini-batch: the same bits at every number
                                      of ranks that divides it; 0 = world_size                 */
} tt_trainer_desc;

/* Two rewards, each under one name: `reward`, TRL's, is the mean over all responses of the step, which the
 * update learns from; `own reward`, in the metrics think/own_reward, the mean over the student's own ones,
 * without guided and off-policy responses. Without a teacher the two are equal. */
typedef struct tt_step_metrics {
    int step;
    tt_grpo_metrics grpo;          /* grpo.reward: reward; think.own_reward: own reward        */
    tt_think_metrics think;
    /* of the student's own responses, before a teacher's */
    double mean_length, clipped_ratio, attempt_rate, reflection_rate, correction_rate, spoil_rate;
    double behaviour[TT_N_BEHAVIOURS];
    double grad_norm, learning_rate;
    double update_skipped;         /* updates left out because a gradient was not finite       */
    double reward_errors;          /* calls of a reward function that failed                   */
    double n_resampled;            /* groups that dynamic sampling replaced                    */
    double n_off_policy_cut;       /* responses of your own that max_completion_length cut     */
    double num_tokens;             /* tokens sampled by student and teacher since step 0       */
    double rollout_tokens;         /* of this step: sampled by the student                     */
    double update_tokens;          /* of this step: of forward and backward passes             */
    double rollout_s, teacher_s, update_s, step_s;
    double rollout_tokens_per_s, teacher_tokens_per_s, update_tokens_per_s;
    int n_rewards;
    const char *reward_names[TT_MAX_REWARDS];   /* of grpo.rewards; lent */
} tt_step_metrics;

typedef struct tt_trainer tt_trainer;
TT_API tt_trainer *tt_trainer_create(tt_context *, const tt_trainer_desc *);
TT_API void        tt_trainer_destroy(tt_trainer *);
TT_API tt_status   tt_trainer_step(tt_trainer *, tt_step_metrics *);
TT_API int         tt_trainer_step_count(const tt_trainer *);
TT_API const tt_rollouts *tt_trainer_rollouts(const tt_trainer *);           /* of the last step */
/* Weights, moments, counters: the run goes on bit for bit. */
TT_API tt_status   tt_trainer_save(tt_trainer *, const char *path);
TT_API tt_status   tt_trainer_load(tt_trainer *, const char *path);
/* One JSON object with the names of TRL and verl, no newline; without timings if step_s is 0. */
TT_API tt_status   tt_metrics_json(const tt_step_metrics *, tt_text *out);


#ifdef __cplusplus
}
#endif
#endif /* THINKTUNING_H */

/* ============================================================================================
 * Implementation
 * ============================================================================================ */
#ifdef THINKTUNING_IMPLEMENTATION
#ifndef TTI_IMPLEMENTED
#define TTI_IMPLEMENTED
#if defined(__FAST_MATH__) && !defined(TT_ALLOW_FAST_MATH)
#error "thinktuning.h: -ffast-math breaks the promised results; define TT_ALLOW_FAST_MATH to accept that"
#endif
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#define TTI_POSIX 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#elif defined(_WIN32)
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#include <sys/types.h>
#endif
#if defined(TT_NO_THREADS)
#elif defined(TTI_POSIX) && defined(__GNUC__) && !(defined(TT_OPENMP) && defined(_OPENMP))
#define TTI_TEAM 1
#include <pthread.h>
#include <signal.h>
#elif defined(_OPENMP)
#define TTI_OPENMP 1
#include <omp.h>
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* ==== 1. base ==============================================================================
 * The context, and what every chapter stands on: numbers as text, errors, memory, threads, random numbers,
 * growable text, files, JSON.
 *
 * tt_context is the only state there is. Memory comes in two kinds. What lives longer than a step is
 * allocated and freed one by one (tt_alloc). What a step makes, its graph above all, comes from an arena: a
 * list of chunks that is filled from front to back and emptied at once. Work is cut into parts that a team of
 * threads shares.
 *
 * Uses the table of a backend, for the device's arena. */

#define TTI_ERROR_SIZE 5120                /* holds the longest path, and what is said of it     */

typedef struct tti_chunk { struct tti_chunk *next; char *base; size_t size, used, most_used; } tti_chunk;

/* A place in an arena, to which it can be emptied. */
typedef struct tti_mark { tti_chunk *chunk; size_t used; } tti_mark;

typedef struct tti_arena {
    tti_chunk *first, *current;            /* current: the one being filled; those behind it are empty */
    tti_mark floor;                        /* below it all stays: a tt_generate is under way      */
    size_t most_used;                      /* bytes, of all steps so far                         */
    int on_backend;                        /* memory of the backend, else of the allocator       */
    size_t given_back;                     /* times that a part of it was, in a step             */
} tti_arena;

struct tti_team;                           /* [tt:base.threads]                                  */
struct tti_node;                           /* chapter 5: one recorded op                         */
struct tti_spare;                          /* chapter 5: a gradient buffer to reuse              */

struct tt_context {
    tt_allocator allocator;
    tt_log_fn log;
    void *log_user;
    size_t current_bytes, peak_bytes;
    int n_threads;
    struct tti_team *team;                 /* NULL until there is work for more than one         */
    char kernel_wish[16];                  /* desc.kernel or TT_KERNEL, "" = best                */
    char matmul_wish[16];                  /* desc.matmul or TT_MATMUL, "" = f32                 */
    const char *kernel_name;               /* set by the CPU kernels                             */
    char error[TTI_ERROR_SIZE];
    tt_status status;                      /* of the error text                                  */
    const char *failed;                    /* the function whose error it is, see tti_tried      */
    tt_status broken;                      /* a bad desc: every call fails                       */
    int graph_error;                       /* graph building has failed: the error sticks        */
    const tt_backend *backend;
    void *backend_state, *cpu_state;       /* equal on the CPU backend                           */
    tti_arena host, device;                /* memory of the step                                 */
    struct tti_node *tape;                 /* newest op first                                    */
    struct tti_spare *spare_grads;
    size_t steps_lost;                     /* of decoding, see tti_packed                        */
    int no_grad;
};

/* ---- [tt:base.characters] characters ---- */

/* The blanks of JSON; the digits of any locale. */
static int tti_is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
static int tti_is_decimal(char c) { return c >= '0' && c <= '9'; }

/* Length of the UTF-8 character at `at` (at < end), and its code point. What is no valid character, as a
 * piece of one, a longer form than needed or a surrogate, is one byte with the code point UINT32_MAX: no
 * letter, no number, no space. */
static size_t tti_utf8(const char *at, const char *end, uint32_t *c) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *b = (const unsigned char *)at;
    size_t size = *b < 0x80 ? 1 : *b < 0xC2 ? 0 : *b < 0xE0 ? 2 : *b < 0xF0 ? 3 : *b < 0xF8 ? 4 : 0, i;
    *c = size == 1 ? b[0] : b[0] & (0x7Fu >> size);
    if (size > (size_t)(end - at)) { size = 0; }
    for (i = 1; i < size; i++) {
        if ((b[i] & 0xC0) != 0x80) { size = 0; }
        *c = (*c << 6) | (b[i] & 0x3Fu);
    }
    if (size > 0 && *c >= least[size] && *c <= 0x10FFFF && (*c < 0xD800 || *c >= 0xE000)) { return size; }
    *c = UINT32_MAX;
    return 1;
}

/* The first byte that belongs to no valid character; end if there is none. */
static const char *tti_utf8_invalid(const char *at, const char *end) {
    uint32_t c = 0;
    while (at < end) {
        size_t size = tti_utf8(at, end, &c);
        if (c == UINT32_MAX) { break; }
        at += size;
    }
    return at;
}

/* ---- [tt:base.numbers] numbers as text ----
 * strtod and printf round to the nearest, but write the decimal point of the host's locale: 0,5 for 0.5.
 * Therefore numbers pass through them without a point, as whole digits and an exponent: 12.5 is "125e-1". */

/* The middle between two neighbouring doubles has no more than 767 digits. Of the digits behind the 780th it
 * matters only whether they are all zero. */
#define TTI_MAX_DIGITS 780

/* The double nearest to digits * 10^exponent, or the float. Behind the n digits is room for 16 characters. */
static double tti_digits_value(char *digits, int n, int64_t exponent, int is_float) {
    const int64_t most = 99999;                /* infinity or zero, whatever the digits */
    if (exponent > most) { exponent = most; }
    if (exponent < -most) { exponent = -most; }
    digits[n] = 0;
    if (exponent != 0) { snprintf(digits + n, 16, "e%d", (int)exponent); }
    return is_float ? (double)strtof(digits, NULL) : strtod(digits, NULL);
}

/* An exponent as e-12 at the begin of text: its bytes, and *power; 0 and 0 where none stands. */
static size_t tti_exponent_read(const char *text, size_t size, int64_t *power) {
    size_t at = 1, first;
    int minus = size > 1 && text[1] == '-';
    *power = 0;
    if (size < 2 || (*text != 'e' && *text != 'E')) { return 0; }
    if (text[1] == '-' || text[1] == '+') { at++; }
    for (first = at; at < size && tti_is_decimal(text[at]); at++) {
        if (*power < ((int64_t)1 << 50)) { *power = 10 * *power + (text[at] - '0'); }
    }
    if (minus) { *power = -*power; }
    return at > first ? at : 0;
}

TT_API size_t tt_number_read(const char *text, size_t size, double *out) {
    char digits[TTI_MAX_DIGITS + 16];
    size_t at = size > 0 && (*text == '-' || *text == '+');
    int64_t exponent = 0, power, whole = 0;
    int n = 0, any = 0, point = 0;             /* n: digits from the first that is not zero */
    for (; at < size && (tti_is_decimal(text[at]) || (text[at] == '.' && !point)); at++) {
        if (text[at] == '.') {
            point = 1;
            continue;
        }
        any = 1;
        exponent -= point;
        if (n == 0 && text[at] == '0') { continue; }
        if (n < 15) { whole = 10 * whole + (text[at] - '0'); }
        if (n < TTI_MAX_DIGITS) {
            digits[n++] = text[at];
            continue;
        }
        exponent++;                            /* a digit that is left out */
        if (text[at] != '0' && digits[n - 1] == '0') { digits[n - 1] = '1'; }
    }
    if (!any) { return 0; }
    at += tti_exponent_read(text + at, size - at, &power);
    exponent += power;
    if (n == 0 || (n <= 15 && exponent == 0)) { *out = (double)whole; }    /* nothing to round */
    else { *out = tti_digits_value(digits, n, exponent, 0); }
    if (*text == '-') { *out = -*out; }
    return at;
}

/* The fewest digits that read back as value >= 0, and of those the nearest, as 0.DIGITS * 10^*point; returns
 * how many. printf gives the nearest number of n digits. If that one does not read back, no other of n digits
 * does; but a power of two has its lower neighbour only half as far as the upper one, so there the next
 * larger number may. */
static int tti_shortest(double value, int is_float, char digits[40], int *point) {
    char text[40], *mark;
    int n, power;
    for (n = 1; ; n++) {
        snprintf(text, sizeof text, "%.*e", n - 1, value);         /* d.ddde-12, with the locale's point */
        mark = strchr(text, 'e');
        power = (int)strtol(mark + 1, NULL, 10);
        digits[0] = text[0];
        memcpy(digits + 1, mark - (n - 1), (size_t)n - 1);
        *point = power + 1;
        if (n == 17 || tti_digits_value(digits, n, *point - n, is_float) == value) { return n; }
        if (digits[n - 1] == '9') { continue; }
        digits[n - 1]++;
        if (tti_digits_value(digits, n, *point - n, is_float) == value) { return n; }
    }
}

/* The shortest text that reads back as value, of a double or a float; laid out as Python does, but whole
 * numbers without ".0". Returns its length. */
static size_t tti_number_text(char out[48], double value, int is_float) {
    char digits[40], *at = out;
    int n, point, i;
    if (is_float) { value = (double)(float)value; }
    if (!isfinite(value)) {
        memcpy(out, "null", 4);
        return 4;
    }
    if (signbit(value)) { *at++ = '-'; }
    n = tti_shortest(fabs(value), is_float, digits, &point);
    if (point < -3 || point > 16) {
        *at++ = digits[0];
        if (n > 1) { *at++ = '.'; }
        memcpy(at, digits + 1, (size_t)n - 1);
        at += n - 1;
        return (size_t)(at - out) + (size_t)snprintf(at, 8, "e%+03d", point - 1);
    }
    for (i = point > 0 ? 0 : point - 1; i < n || i < point; i++) {     /* digit i counts 10^(point - 1 - i) */
        if (i == point) { *at++ = '.'; }
        *at++ = i >= 0 && i < n ? digits[i] : '0';
    }
    return (size_t)(at - out);
}

/* ---- [tt:base.format] printf whatever the locale ----
 * The format is cut into plain text and directives, and each goes to snprintf by itself. Whatever then stands
 * between the digits of a number is the locale's point, in one byte or several, and becomes a point. Whole
 * numbers are widened to long long, so that their conversion needs no table of lengths. */

typedef struct tti_sink {
    char *out;                                 /* written as far as it reaches          */
    size_t size, n;                            /* n: length of the whole so far         */
    va_list list;
} tti_sink;

static void tti_sink_put(tti_sink *s, const char *bytes, size_t n) {
    size_t room = s->n + 1 < s->size ? s->size - 1 - s->n : 0;
    if (room) { memcpy(s->out + s->n, bytes, n < room ? n : room); }
    s->n += n;
}

/* Makes the locale's point in the number that begins at `from` a point. */
static void tti_sink_point(tti_sink *s, size_t from) {
    size_t end = s->n < s->size ? s->n : s->size ? s->size - 1 : 0, to = from, at;
    for (at = from; at < end; at++) {
        char c = s->out[at];
        if (strchr("0123456789+- eEinfatyINFATY", c)) { s->out[to++] = c; }
        else if (to == from || s->out[to - 1] != '.') { s->out[to++] = '.'; }
    }
    s->n -= at - to;
}

/* The next argument, by its length modifier: l, L for ll, z, else none (h and hh are promoted to int). */
static unsigned long long tti_sink_whole(tti_sink *s, char length, int is_signed) {
    if (length == 'L') { return va_arg(s->list, unsigned long long); }
    if (length == 'z') { return va_arg(s->list, size_t); }
    if (is_signed) { return (unsigned long long)(length ? va_arg(s->list, long) : va_arg(s->list, int)); }
    return length ? va_arg(s->list, unsigned long) : va_arg(s->list, unsigned);
}

/* Flags, width and precision of a directive, * replaced by its argument, are appended to spec; returns what
 * follows. */
static const char *tti_sink_flags(tti_sink *s, const char *format, char spec[48]) {
    size_t n = 1;
    for (; *format && strchr("-+ #0123456789.*", *format) && n < 24; format++) {
        int value;
        if (*format != '*') {
            spec[n++] = *format;
            continue;
        }
        value = va_arg(s->list, int);
        if (value >= 0 || spec[n - 1] != '.') { n += (size_t)snprintf(spec + n, 12, "%d", value); }
        else { n--; }                          /* a negative precision is none */
    }
    spec[n] = 0;
    return format;
}

/* Prints the next argument as spec, which ends before the letter of the conversion, wants it; returns how
 * much snprintf has added, -1 where there is no such conversion. */
static int tti_sink_print(tti_sink *s, char *spec, char letter, char length) {
    size_t room = s->n < s->size ? s->size - s->n : 0;
    char *out = room ? s->out + s->n : NULL, *end = spec + strlen(spec), number[48];
    unsigned long long whole;
    int is_signed = letter == 'd' || letter == 'i';
    end[0] = letter;
    switch (letter) {
    case 'c': return snprintf(out, room, spec, va_arg(s->list, int));
    case 's': return snprintf(out, room, spec, va_arg(s->list, const char *));
    case 'p': return snprintf(out, room, spec, va_arg(s->list, void *));
    case 'e': case 'E': case 'f': case 'F': case 'g': case 'G':
        return snprintf(out, room, spec, va_arg(s->list, double));
    case 'd': case 'i': case 'u': case 'x': case 'X': case 'o':
        end[0] = end[1] = 'l';
        end[2] = letter;
        whole = tti_sink_whole(s, length, is_signed);
        return is_signed ? snprintf(out, room, spec, (long long)whole) : snprintf(out, room, spec, whole);
    case 'r': case 'R':
        tti_sink_put(s, number, tti_number_text(number, va_arg(s->list, double), letter == 'R'));
        return 0;
    case '%':
        tti_sink_put(s, "%", 1);
        return 0;
    default: return -1;
    }
}

/* The directive behind its %; returns what follows it, NULL if it is none. */
static const char *tti_sink_directive(tti_sink *s, const char *format) {
    char spec[48] = "%", length = 0;
    size_t begin = s->n;
    int n;
    format = tti_sink_flags(s, format, spec);
    while (*format && strchr("hlz", *format)) {
        if (*format != 'h') { length = *format == 'l' && length == 'l' ? 'L' : *format; }
        format++;
    }
    n = tti_sink_print(s, spec, *format, length);
    if (n < 0) { return NULL; }
    s->n += (size_t)n;
    if (strchr("eEfFgG", *format)) { tti_sink_point(s, begin); }
    return format + 1;
}

/* As vsnprintf: writes what fits, with a NUL; returns the length of the whole, -1 where the format is
 * none. */
static int tti_vformat(char *out, size_t size, const char *format, va_list list) {
    tti_sink s;
    s.out = out;
    s.size = size;
    s.n = 0;
    va_copy(s.list, list);
    while (format) {
        size_t plain = strcspn(format, "%");
        tti_sink_put(&s, format, plain);
        format += plain;
        if (!*format) { break; }
        format = tti_sink_directive(&s, format + 1);
    }
    va_end(s.list);
    if (size) { out[s.n < size ? s.n : size - 1] = 0; }
    return format && s.n <= INT_MAX ? (int)s.n : -1;
}

static int tti_format(char *out, size_t size, const char *format, ...) {
    va_list list;
    int n;
    va_start(list, format);
    n = tti_vformat(out, size, format, list);
    va_end(list);
    return n;
}

/* ---- [tt:base.errors] errors ----
 * Functions of one step that may fail return its status; those of several use TTI_TRY. While a graph is being
 * built the first error sticks (ctx->graph_error): the ops behind it return NULL for lack of operands, which
 * is no news. */

/* One step of a function: a failure goes to its label `done`, where it cleans up and returns status. */
#define TTI_TRY(call)                                \
    do {                                             \
        status = (call);                             \
        if (status != TT_OK) { goto done; }          \
    } while (0)

TT_API const char *tt_status_name(tt_status status) {
#define TTI_STATUS_CASE(name, value, text) case name: return text;
    switch (status) {
    TT_STATUS_LIST(TTI_STATUS_CASE)
    case TT_STATUS_END_: break;
    }
#undef TTI_STATUS_CASE
    return "unknown status";
}

TT_API tt_status tt_fail(tt_context *ctx, tt_status status, const char *format, ...) {
    va_list list;
    int n;
    if (!ctx || ctx->graph_error) { return status; }
    ctx->failed = NULL;
    va_start(list, format);
    n = tti_vformat(ctx->error, sizeof ctx->error, format, list);
    va_end(list);
    if (n < 0) { snprintf(ctx->error, sizeof ctx->error, "bad format: %s", format); }
    ctx->status = status;
    if (ctx->log) { ctx->log(ctx->log_user, status, ctx->error); }
    return status;
}

TT_API const char *tt_error(const tt_context *ctx) { return ctx ? ctx->error : "out of memory"; }
TT_API tt_status tt_error_status(const tt_context *ctx) { return ctx ? ctx->status : TT_ERR_MEM; }

TT_API void tt_error_clear(tt_context *ctx) {
    if (!ctx || ctx->broken != TT_OK) { return; }
    ctx->status = TT_OK;
    ctx->failed = NULL;
    ctx->graph_error = 0;
    ctx->error[0] = 0;
}

/* A step's work has succeeded: whatever failed before it is mended. */
static tt_status tti_mended(tt_context *ctx) {
    tt_error_clear(ctx);
    return TT_OK;
}

/* The end of the function `who`, which may be tried again: when it succeeds, the error of its own failure
 * goes. */
static tt_status tti_tried(tt_context *ctx, const char *who, tt_status status) {
    if (ctx->graph_error) { return status; }
    if (status != TT_OK) { ctx->failed = who; }
    else if (ctx->failed && strcmp(ctx->failed, who) == 0) { tt_error_clear(ctx); }
    return status;
}

/* The same of one that returns an object, or NULL. */
static void *tti_made(tt_context *ctx, const char *who, void *object) {
    tti_tried(ctx, who, object ? TT_OK : TT_ERR_ARG);
    return object;
}

/* ---- [tt:base.memory] memory ---- */

/* *out = a * b, or 0 if no object can be so large. Dimensions are multiplied by this alone. */
static int tti_mul_size(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > (size_t)PTRDIFF_MAX / b) { return 0; }
    *out = a * b;
    return 1;
}

/* Weights, caches and arenas are walked from end to end: large pages, where the system gives them to those
 * who ask. (Memory that also begins at one is slower: everything would meet in the same sets of the
 * caches.) */
static void *tti_default_alloc(void *user, size_t bytes) {
    void *memory = malloc(bytes);
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)2 << 20, end = ((uintptr_t)memory + bytes) / page * page;
    uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page;
    if (memory && begin < end) { madvise((void *)begin, end - begin, MADV_HUGEPAGE); }
#endif
    (void)user;
    return memory;
}

static void tti_default_free(void *user, void *memory, size_t bytes) {
    (void)user;
    (void)bytes;
    free(memory);
}

/* Not zeroed. Of no bytes it is one byte, so that NULL always means an error. */
static void *tti_alloc_raw(tt_context *ctx, size_t bytes) {
    void *memory = ctx->allocator.alloc(ctx->allocator.user, bytes ? bytes : 1);
    if (!memory) {
        tt_fail(ctx, TT_ERR_MEM, "out of memory: %zu bytes wanted, %zu in use", bytes, ctx->current_bytes);
        return NULL;
    }
    ctx->current_bytes += bytes;
    if (ctx->current_bytes > ctx->peak_bytes) { ctx->peak_bytes = ctx->current_bytes; }
    return memory;
}

TT_API void *tt_alloc(tt_context *ctx, size_t count, size_t size) {
    size_t bytes;
    void *memory;
    if (!tti_mul_size(count, size, &bytes)) {
        tt_fail(ctx, TT_ERR_MEM, "out of memory: %zu x %zu bytes overflow", count, size);
        return NULL;
    }
    memory = tti_alloc_raw(ctx, bytes);
    if (memory) { memset(memory, 0, bytes ? bytes : 1); }
    return memory;
}

TT_API void tt_free(tt_context *ctx, void *memory, size_t count, size_t size) {
    size_t bytes = count * size;
    if (!memory) { return; }
    ctx->current_bytes -= bytes;
    ctx->allocator.free(ctx->allocator.user, memory, bytes ? bytes : 1);
}

TT_API tt_memory tt_memory_get(const tt_context *ctx) {
    tt_memory m;
    m.current_bytes = ctx->current_bytes;
    m.peak_bytes = ctx->peak_bytes;
    return m;
}

/* Grows an array by doubling to hold at least `want` elements; on failure *array and *capacity stay as they
 * are. */
static tt_status tti_grow(tt_context *ctx, void **array, size_t *capacity, size_t want, size_t size) {
    size_t next = *capacity ? *capacity : 16;
    void *bigger;
    if (want <= *capacity) { return TT_OK; }
    while (next < want) { next = next > SIZE_MAX / 2 ? want : next * 2; }
    bigger = tt_alloc(ctx, next, size);
    if (!bigger) { return TT_ERR_MEM; }
    if (*array) { memcpy(bigger, *array, *capacity * size); }
    tt_free(ctx, *array, *capacity, size);
    *array = bigger;
    *capacity = next;
    return TT_OK;
}

static char *tti_strdup(tt_context *ctx, const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = (char *)tt_alloc(ctx, n, 1);
    if (copy) { memcpy(copy, text, n); }
    return copy;
}

static void tti_strfree(tt_context *ctx, char *text) {
    if (text) { tt_free(ctx, text, strlen(text) + 1, 1); }
}

/* ---- [tt:base.arena] the step's arena ---- */

#define TTI_CHUNK ((size_t)1 << 20)            /* the least size of a chunk       */
#define TTI_LARGE_CHUNK ((size_t)64 << 20)     /* has no room for eight like it   */
#define TTI_ALIGN ((size_t)64)

static tti_chunk *tti_chunk_create(tt_context *ctx, const tti_arena *arena, size_t size) {
    tti_chunk *chunk = (tti_chunk *)tt_alloc(ctx, 1, sizeof *chunk);
    if (!chunk) { return NULL; }
    chunk->base = (char *)(arena->on_backend ? ctx->backend->alloc(ctx, size) : tti_alloc_raw(ctx, size));
    chunk->size = size;
    if (chunk->base) { return chunk; }
    tt_free(ctx, chunk, 1, sizeof *chunk);
    return NULL;
}

static void tti_chunk_destroy(tt_context *ctx, const tti_arena *arena, tti_chunk *chunk) {
    if (arena->on_backend) { ctx->backend->free(ctx, chunk->base, chunk->size); }
    else { tt_free(ctx, chunk->base, chunk->size, 1); }
    tt_free(ctx, chunk, 1, sizeof *chunk);
}

/* Where the next aligned byte is. */
static size_t tti_chunk_next(const tti_chunk *chunk) {
    size_t misfit = (size_t)((uintptr_t)(chunk->base + chunk->used) & (TTI_ALIGN - 1));
    return chunk->used + (misfit ? TTI_ALIGN - misfit : 0);
}

static int tti_chunk_holds(const tti_chunk *chunk, size_t bytes) {
    return tti_chunk_next(chunk) + bytes <= chunk->size;
}

/* A new chunk for `bytes` behind the current one. It has room for eight like it, so that little is left over
 * at the end, and at least an eighth of what the arena has, so that few are made. */
static tti_chunk *tti_arena_extend(tt_context *ctx, tti_arena *arena, size_t bytes) {
    tti_chunk **link = arena->current ? &arena->current->next : &arena->first, *chunk, *c;
    size_t size = 8 * bytes < TTI_LARGE_CHUNK ? 8 * bytes : TTI_LARGE_CHUNK, total = 0;
    for (c = arena->first; c; c = c->next) { total += c->size; }
    if (size < bytes + TTI_ALIGN) { size = bytes + TTI_ALIGN; }
    if (size < TTI_CHUNK) { size = TTI_CHUNK; }
    chunk = tti_chunk_create(ctx, arena, size > total / 8 ? size : total / 8);
    if (!chunk) { return NULL; }
    chunk->next = *link;
    *link = chunk;
    return chunk;
}

/* Uninitialised bytes, aligned to TTI_ALIGN. */
static void *tti_arena_alloc(tt_context *ctx, tti_arena *arena, size_t bytes) {
    tti_chunk *chunk = arena->current;
    size_t begin;
    if (bytes > (size_t)PTRDIFF_MAX / 4) {
        tt_fail(ctx, TT_ERR_MEM, "out of memory: %zu bytes in one step tensor", bytes);
        return NULL;
    }
    if (chunk && !tti_chunk_holds(chunk, bytes)) {
        chunk = chunk->next;
        if (chunk) { chunk->used = 0; }
    }
    if (!chunk || !tti_chunk_holds(chunk, bytes)) { chunk = tti_arena_extend(ctx, arena, bytes); }
    if (!chunk) { return NULL; }
    begin = tti_chunk_next(chunk);
    arena->current = chunk;
    chunk->used = begin + bytes;
    if (chunk->used > chunk->most_used) { chunk->most_used = chunk->used; }
    return chunk->base + begin;
}

/* What is allocated behind a mark is freed by going back to it. */
static tti_mark tti_arena_mark(const tti_arena *arena) {
    tti_mark mark;
    mark.chunk = arena->current;
    mark.used = arena->current ? arena->current->used : 0;
    return mark;
}

static void tti_arena_release(tti_arena *arena, tti_mark mark) {
    arena->current = mark.chunk ? mark.chunk : arena->first;
    if (arena->current) { arena->current->used = mark.used; }
    arena->given_back++;
}

static void tti_arena_destroy(tt_context *ctx, tti_arena *arena) {
    while (arena->first) {
        tti_chunk *next = arena->first->next;
        tti_chunk_destroy(ctx, arena, arena->first);
        arena->first = next;
    }
    arena->current = NULL;
}

/* Empties the arena. Its chunks stay: to map and clear memory takes longer than to fill it. Only where steps
 * of other shapes have left far more than twice what any step has used, one chunk takes their place. */
static void tti_arena_reset(tt_context *ctx, tti_arena *arena) {
    size_t total = 0, used = 0;
    tti_chunk *chunk;
    if (arena->floor.chunk) {
        tti_arena_release(arena, arena->floor);
        return;
    }
    for (chunk = arena->first; chunk; chunk = chunk->next) {
        total += chunk->size;
        used += chunk->most_used;
        chunk->used = chunk->most_used = 0;
    }
    if (used > arena->most_used) { arena->most_used = used; }
    if (arena->first && arena->first->next && total > 2 * arena->most_used + TTI_LARGE_CHUNK) {
        tti_arena_destroy(ctx, arena);
        arena->first = tti_chunk_create(ctx, arena, arena->most_used + arena->most_used / 8);
    }
    arena->current = arena->first;
}

/* Host memory of the step, zeroed. */
static void *tti_step_alloc(tt_context *ctx, size_t bytes) {
    void *memory = tti_arena_alloc(ctx, &ctx->host, bytes);
    if (memory) { memset(memory, 0, bytes); }
    return memory;
}

/* ---- [tt:base.threads] threads ----
 * A context's team is the calling thread and n_threads - 1 workers, started when there is work for them. A
 * job has n parts; whoever is free takes the next one. Taking a part is one compare-and-swap on the number of
 * parts left, and the job's fields change only after all parts are done: so a worker that comes late finds
 * nothing left or a part of the next job, both right. The caller works too and waits only for parts that were
 * taken: a worker that the system keeps from running delays nobody. Who waits spins for TTI_SPIN_S, then
 * sleeps. (An OpenMP team spins for milliseconds: beside other busy programs it trained the demo's model many
 * times slower, see bench/RESULTS.md.) */

#define TTI_MAX_THREADS 1024

typedef void (*tti_part_fn)(void *user, int part, int worker);   /* worker: 0 .. n_threads - 1 */

#ifdef TTI_TEAM
#define TTI_SPIN_S 40e-6

/* Older C libraries hold threads in a library of their own: a program linked without that one has one thread.
 * Elsewhere the names must not be weak: a static link takes no member of an archive for the sake of a weak
 * one. */
#if defined(__ELF__) && (defined(__GLIBC__) ? __GLIBC__ == 2 && __GLIBC_MINOR__ < 34 : !defined(__linux__))
#pragma weak pthread_create
#pragma weak pthread_join
#pragma weak pthread_sigmask
#define TTI_THREADS_LINKED (pthread_create && pthread_join && pthread_sigmask)
#else
#define TTI_THREADS_LINKED 1
#endif

typedef struct tti_member { struct tti_team *team; pthread_t thread; int worker; } tti_member;

typedef struct tti_team {
    tti_part_fn part;
    void *user;
    int n_parts;
    int left, done;                        /* atomic: parts to take, parts finished         */
    int stop;                              /* atomic: the workers shall end                 */
    int n_asleep, caller_asleep;           /* atomic: who waits for a signal                */
    int n_members, capacity;               /* workers that run; n_threads - 1               */
    int spins;                             /* pauses in TTI_SPIN_S                          */
    tti_member *members;
    pthread_mutex_t mutex;
    pthread_cond_t work, finished;
} tti_team;

#define TTI_ATOMIC_GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define TTI_ATOMIC_SET(x, value) __atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)
#define TTI_ATOMIC_ADD(x, value) __atomic_add_fetch(&(x), value, __ATOMIC_SEQ_CST)
#define TTI_ATOMIC_SWAP(x, was, value) \
    __atomic_compare_exchange_n(&(x), &(was), value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

static void tti_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void tti_team_wake(tti_team *team, pthread_cond_t *who) {
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(who);
    pthread_mutex_unlock(&team->mutex);
}

/* Takes parts until none is left; a swap that fails has read `left` anew. */
static void tti_team_work(tti_team *team, int worker) {
    int left = TTI_ATOMIC_GET(team->left);
    while (left > 0) {
        int n_parts;
        if (!TTI_ATOMIC_SWAP(team->left, left, left - 1)) { continue; }
        n_parts = team->n_parts;
        team->part(team->user, n_parts - left, worker);
        if (TTI_ATOMIC_ADD(team->done, 1) == n_parts && TTI_ATOMIC_GET(team->caller_asleep)) {
            tti_team_wake(team, &team->finished);
        }
        left = TTI_ATOMIC_GET(team->left);
    }
}

/* A worker: works, spins, sleeps. n_asleep is raised under the mutex before `left` is looked at for the last
 * time, so a job that is given in between sees it and wakes everybody. */
static void *tti_team_member(void *user) {
    tti_member *me = (tti_member *)user;
    tti_team *team = me->team;
    while (!TTI_ATOMIC_GET(team->stop)) {
        int spins = team->spins;
        tti_team_work(team, me->worker);
        while (spins-- > 0 && TTI_ATOMIC_GET(team->left) == 0 && !TTI_ATOMIC_GET(team->stop)) { tti_pause(); }
        if (TTI_ATOMIC_GET(team->left) > 0) { continue; }
        pthread_mutex_lock(&team->mutex);
        TTI_ATOMIC_ADD(team->n_asleep, 1);
        while (TTI_ATOMIC_GET(team->left) == 0 && !TTI_ATOMIC_GET(team->stop)) {
            pthread_cond_wait(&team->work, &team->mutex);
        }
        TTI_ATOMIC_ADD(team->n_asleep, -1);
        pthread_mutex_unlock(&team->mutex);
    }
    return NULL;
}

/* Signals are for the program's own threads. Where the system gives fewer threads, fewer work. */
static void tti_team_start(tti_team *team) {
    sigset_t all, before;
    double begin = tt_clock(), seconds;
    int i;
    for (i = 0; i < 1000; i++) { tti_pause(); }
    seconds = tt_clock() - begin;
    team->spins = seconds > 1e-3 * TTI_SPIN_S ? (int)(1000 * TTI_SPIN_S / seconds) : 1000000;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (i = 0; i < team->capacity; i++) {
        tti_member *member = &team->members[i];
        member->team = team;
        member->worker = i + 1;
        if (pthread_create(&member->thread, NULL, tti_team_member, member) != 0) { break; }
    }
    team->n_members = i;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* The caller's thread works too, so the team has one less than n_threads. */
static tt_status tti_team_create(tt_context *ctx) {
    tti_team *team = (tti_team *)tt_alloc(ctx, 1, sizeof *team);
    if (!team) { return TT_ERR_MEM; }
    team->capacity = ctx->n_threads - 1;
    team->members = (tti_member *)tt_alloc(ctx, (size_t)team->capacity, sizeof *team->members);
    if (!team->members) {
        tt_free(ctx, team, 1, sizeof *team);
        return TT_ERR_MEM;
    }
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->work, NULL);
    pthread_cond_init(&team->finished, NULL);
    tti_team_start(team);
    ctx->team = team;
    return TT_OK;
}

static void tti_team_destroy(tt_context *ctx) {
    tti_team *team = ctx->team;
    int i;
    if (!team) { return; }
    TTI_ATOMIC_SET(team->stop, 1);
    tti_team_wake(team, &team->work);
    for (i = 0; i < team->n_members; i++) { pthread_join(team->members[i].thread, NULL); }
    pthread_cond_destroy(&team->finished);
    pthread_cond_destroy(&team->work);
    pthread_mutex_destroy(&team->mutex);
    tt_free(ctx, team->members, (size_t)team->capacity, sizeof *team->members);
    tt_free(ctx, team, 1, sizeof *team);
    ctx->team = NULL;
}

/* `left` is set last: it gives the job free. */
static void tti_team_run(tti_team *team, tti_part_fn part, void *user, int n) {
    int spins = team->spins;
    team->part = part;
    team->user = user;
    team->n_parts = n;
    TTI_ATOMIC_SET(team->done, 0);
    TTI_ATOMIC_SET(team->left, n);
    if (TTI_ATOMIC_GET(team->n_asleep) > 0) { tti_team_wake(team, &team->work); }
    tti_team_work(team, 0);
    while (spins-- > 0 && TTI_ATOMIC_GET(team->done) < n) { tti_pause(); }
    if (TTI_ATOMIC_GET(team->done) == n) { return; }
    pthread_mutex_lock(&team->mutex);
    TTI_ATOMIC_SET(team->caller_asleep, 1);
    while (TTI_ATOMIC_GET(team->done) < n) { pthread_cond_wait(&team->finished, &team->mutex); }
    TTI_ATOMIC_SET(team->caller_asleep, 0);
    pthread_mutex_unlock(&team->mutex);
}
#else
static void tti_team_destroy(tt_context *ctx) { (void)ctx; }
#endif

/* part(user, i, worker) for i = 0 .. n-1, each once, in any order, on any of the threads; returns when all
 * are done. */
static tt_status tti_parallel(tt_context *ctx, tti_part_fn part, void *user, int n) {
    int i;
#if defined(TTI_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(ctx->n_threads) if (n > 1)
    for (i = 0; i < n; i++) { part(user, i, omp_get_thread_num()); }
#else
#if defined(TTI_TEAM)
    if (n > 1 && ctx->n_threads > 1) {
        if (!ctx->team && tti_team_create(ctx) != TT_OK) { return TT_ERR_MEM; }
        tti_team_run(ctx->team, part, user, n);
        return TT_OK;
    }
#endif
    (void)ctx;
    for (i = 0; i < n; i++) { part(user, i, 0); }
#endif
    return TT_OK;
}

/* tti_grow for the parts of a job, which may want memory at the same time. */
static tt_status tti_grow_shared(tt_context *ctx, void **array, size_t *capacity, size_t want, size_t size) {
    tt_status status;
#ifdef TTI_TEAM
    if (ctx->team) { pthread_mutex_lock(&ctx->team->mutex); }
#endif
#ifdef TTI_OPENMP
#pragma omp critical(tti_memory)
#endif
    status = tti_grow(ctx, array, capacity, want, size);
#ifdef TTI_TEAM
    if (ctx->team) { pthread_mutex_unlock(&ctx->team->mutex); }
#endif
    return status;
}

/* As many as desc says, else as OMP_NUM_THREADS says, which other libraries heed too, else one per
 * processor. */
static int tti_n_threads(int wish) {
    long n = wish;
#if defined(TTI_TEAM)
    const char *environment = getenv("OMP_NUM_THREADS");
    if (!TTI_THREADS_LINKED) { return 1; }
    if (n < 1 && environment) { n = strtol(environment, NULL, 10); }
#ifdef _SC_NPROCESSORS_ONLN
    if (n < 1) { n = sysconf(_SC_NPROCESSORS_ONLN); }
#endif
#elif defined(TTI_OPENMP)
    if (n < 1) { n = omp_get_max_threads(); }
#endif
    return n < 1 ? 1 : n > TTI_MAX_THREADS ? TTI_MAX_THREADS : (int)n;
}

/* Seconds, from a clock that nobody sets where there is one. */
TT_API double tt_clock(void) {
#if defined(TTI_POSIX) && defined(CLOCK_MONOTONIC)
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t) == 0) { return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec; }
#endif
    return (double)time(NULL);
}

/* ---- [tt:base.random] random numbers ----
 * Philox4x32-10: ten rounds, each two products of 32 bits whose halves are mixed with the key; key = seed,
 * counter = (index, stream). The first 64 of the 128 bits are used.
 * Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", sec. 3.3 and table 2. */

TT_API uint64_t tt_random(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    int round;
    for (round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;                     /* the key of the next round */
        k1 += 0xBB67AE85u;
    }
    return ((uint64_t)c1 << 32) | c0;
}

TT_API uint64_t tt_rng_next(tt_rng *rng) { return tt_random(rng->seed, rng->stream, rng->index++); }

/* The upper 53 bits as a number in [0, 1): as many as a double holds. */
static double tti_unit(uint64_t bits) { return (double)(bits >> 11) * (1.0 / 9007199254740992.0); }
TT_API double tt_rng_uniform(tt_rng *rng) { return tti_unit(tt_rng_next(rng)); }

/* Box and Muller 1958: sqrt(-2 ln u) cos(2 pi v), with u in (0, 1] so that the logarithm is finite. */
TT_API double tt_rng_normal(tt_rng *rng) {
    double u = 1.0 - tt_rng_uniform(rng), angle = 6.283185307179586 * tt_rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(angle);
}

/* The upper 32 bits times n: a whole part below n. It favours a value by less than n / 2^32. */
TT_API int tt_rng_below(tt_rng *rng, int n) { return (int)(((tt_rng_next(rng) >> 32) * (uint64_t)n) >> 32); }

/* FNV-1a with the final mix of splitmix64. */
TT_API uint64_t tt_hash(const void *bytes, size_t size, uint64_t seed) {
    const unsigned char *b = (const unsigned char *)bytes;
    uint64_t h = 0xCBF29CE484222325u ^ seed;
    size_t i;
    for (i = 0; i < size; i++) { h = (h ^ b[i]) * 0x100000001B3u; }
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
}

/* ---- [tt:base.text] growable text and ids ---- */

/* Room for `more` bytes and a NUL behind them. */
static tt_status tti_text_reserve(tt_text *text, size_t more) {
    void *data = text->data;
    tt_status status;
    if (more > (size_t)PTRDIFF_MAX - text->size - 1) {
        return tt_fail(text->ctx, TT_ERR_MEM, "out of memory: text of %zu more bytes", more);
    }
    status = tti_grow(text->ctx, &data, &text->capacity, text->size + more + 1, 1);
    text->data = (char *)data;
    return status;
}

TT_API tt_status tt_text_append(tt_text *text, const char *bytes, size_t size) {
    tt_status status = tti_text_reserve(text, size);
    if (status != TT_OK) { return status; }
    if (size) { memcpy(text->data + text->size, bytes, size); }
    text->size += size;
    text->data[text->size] = 0;
    return TT_OK;
}

/* Formatted twice: to know how long it is, and into its place. */
TT_API tt_status tt_text_vformat(tt_text *text, const char *format, va_list list) {
    int n = tti_vformat(NULL, 0, format, list);
    tt_status status;
    if (n < 0) { return tt_fail(text->ctx, TT_ERR_ARG, "tt_text_format: bad format \"%s\"", format); }
    status = tti_text_reserve(text, (size_t)n);
    if (status != TT_OK) { return status; }
    text->size += (size_t)tti_vformat(text->data + text->size, (size_t)n + 1, format, list);
    return TT_OK;
}

TT_API tt_status tt_text_format(tt_text *text, const char *format, ...) {
    va_list list;
    tt_status status;
    va_start(list, format);
    status = tt_text_vformat(text, format, list);
    va_end(list);
    return status;
}

TT_API tt_status tt_text_json(tt_text *text, const char *bytes, size_t size) {
    size_t before = text->size, i;
    tt_status status;
    TTI_TRY(tt_text_append(text, "\"", 1));
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\') { TTI_TRY(tt_text_append(text, "\\", 1)); }
        if (c == '\n') { TTI_TRY(tt_text_append(text, "\\n", 2)); }
        else if (c < 0x20) { TTI_TRY(tt_text_format(text, "\\u%04x", c)); }
        else { TTI_TRY(tt_text_append(text, bytes + i, 1)); }
    }
    TTI_TRY(tt_text_append(text, "\"", 1));
done:
    if (status != TT_OK && text->data) {
        text->size = before;
        text->data[before] = 0;
    }
    return status;
}

TT_API void tt_text_free(tt_text *text) {
    tt_free(text->ctx, text->data, text->capacity, 1);
    text->data = NULL;
    text->size = text->capacity = 0;
}

TT_API tt_status tt_ids_append(tt_ids *ids, const int32_t *values, size_t n) {
    void *data = ids->data;
    tt_status status;
    if (n > (size_t)PTRDIFF_MAX / 4 - ids->size) {
        return tt_fail(ids->ctx, TT_ERR_MEM, "out of memory: %zu more ids", n);
    }
    status = tti_grow(ids->ctx, &data, &ids->capacity, ids->size + n, sizeof *ids->data);
    ids->data = (int32_t *)data;
    if (status != TT_OK) { return status; }
    if (n) { memcpy(ids->data + ids->size, values, n * sizeof *values); }
    ids->size += n;
    return TT_OK;
}

TT_API void tt_ids_free(tt_ids *ids) {
    tt_free(ids->ctx, ids->data, ids->capacity, sizeof *ids->data);
    ids->data = NULL;
    ids->size = ids->capacity = 0;
}

/* ---- [tt:base.system] files as the system has them ----
 * All that differs between POSIX, Windows and the rest (of which no more is known than the C library). */

typedef enum tti_file_kind {
    TTI_KIND_NOTHING, TTI_KIND_FILE, TTI_KIND_FOLDER, TTI_KIND_LINK, TTI_KIND_PIPE, TTI_KIND_DEVICE
} tti_file_kind;
static const char *const tti_kind_names[] = {
    "nothing", "a regular file", "a folder", "a symbolic link", "a pipe", "a device"
};

#if defined(TTI_POSIX)
#ifndef O_NOFOLLOW
#define O_NOFOLLOW 0                       /* O_EXCL alone does not follow either */
#endif
#ifndef O_CLOEXEC
#define O_CLOEXEC 0
#endif

static tti_file_kind tti_mode_kind(mode_t mode) {
    return S_ISREG(mode) ? TTI_KIND_FILE : S_ISDIR(mode) ? TTI_KIND_FOLDER : S_ISLNK(mode) ? TTI_KIND_LINK :
           S_ISFIFO(mode) ? TTI_KIND_PIPE : TTI_KIND_DEVICE;
}

/* What stands at path. follow: at the end of a symbolic link, else the link itself; then *permissions become
 * those of a regular file. */
static tti_file_kind tti_path_stat(const char *path, int follow, unsigned *permissions) {
    struct stat info;
    if ((follow ? stat(path, &info) : lstat(path, &info)) != 0) { return TTI_KIND_NOTHING; }
    if (S_ISREG(info.st_mode)) { *permissions = info.st_mode & 0777; }
    return tti_mode_kind(info.st_mode);
}

/* A new file: never one that is there, nor what a link points at. NULL with errno EEXIST if the name is
 * taken. */
static FILE *tti_file_create(const char *path, unsigned permissions) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)permissions);
    FILE *file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (fd >= 0 && !file) {
        close(fd);
        remove(path);
    }
    if (file && permissions != 0666) { (void)fchmod(fd, (mode_t)permissions); }      /* whatever umask is */
    return file;
}

static int tti_sync(FILE *file) { return fsync(fileno(file)); }

/* A new name is on disk only when its folder is. */
static void tti_sync_parent(char *path) {
    char *slash = strrchr(path, '/');
    int fd;
    if (slash) { *slash = 0; }
    fd = open(!slash ? "." : slash == path ? "/" : path, O_RDONLY | O_CLOEXEC);
    if (slash) { *slash = '/'; }
    if (fd < 0) { return; }
    (void)fsync(fd);
    close(fd);
}

static int tti_mkdir(const char *path) { return mkdir(path, 0777); }

#else
static tti_file_kind tti_path_stat(const char *path, int follow, unsigned *permissions) {
#ifdef _WIN32
    struct _stat info;
    int there = _stat(path, &info) == 0, type = there ? info.st_mode & _S_IFMT : 0;
    tti_file_kind other = type == _S_IFDIR ? TTI_KIND_FOLDER : TTI_KIND_DEVICE;
    tti_file_kind kind = type == _S_IFREG ? TTI_KIND_FILE : other;
#else
    FILE *file = fopen(path, "rb");
    int there = file != NULL;
    tti_file_kind kind = TTI_KIND_FILE;
    if (file) { fclose(file); }
#endif
    (void)follow;
    (void)permissions;
    return there ? kind : TTI_KIND_NOTHING;
}

static FILE *tti_file_create(const char *path, unsigned permissions) {
#ifdef _WIN32
    int fd = _open(path, _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, _S_IREAD | _S_IWRITE);
    (void)permissions;
    return fd >= 0 ? _fdopen(fd, "wb") : NULL;
#else
    (void)permissions;
    return fopen(path, "wbx");
#endif
}

static int tti_sync(FILE *file) {
    (void)file;
    return 0;
}

static void tti_sync_parent(char *path) { (void)path; }

static int tti_mkdir(const char *path) {
#ifdef _WIN32
    return _mkdir(path);
#else
    (void)path;
    errno = ENOENT;
    return -1;
#endif
}
#endif

static tti_file_kind tti_path_kind(const char *path) {
    unsigned permissions;
    return tti_path_stat(path, 1, &permissions);
}

TT_API int tt_file_exists(const char *path) { return tti_path_kind(path) != TTI_KIND_NOTHING; }

/* ---- [tt:base.files] whole files ---- */

/* errno says why. */
static tt_status tti_cannot(tt_context *ctx, const char *what, const char *path) {
    return tt_fail(ctx, TT_ERR_IO, "cannot %s %s: %s", what, path, strerror(errno));
}

static tt_status tti_no_file(tt_context *ctx, const char *path, tti_file_kind kind) {
    return tt_fail(ctx, TT_ERR_IO, "cannot read %s: it is %s, expected a regular file", path,
                   tti_kind_names[kind]);
}

static tt_status tti_too_large(tt_context *ctx, const char *name) {
    return tt_fail(ctx, TT_ERR_IO, "cannot read %s: it is larger than TT_MAX_FILE_BYTES, %llu", name,
                   (unsigned long long)TT_MAX_FILE_BYTES);
}

#ifdef TTI_POSIX
/* Opens a regular file to read it, without waiting for a pipe's writer. -1 after an error. */
static int tti_file_descriptor(tt_context *ctx, const char *path, uint64_t *size) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) { tti_cannot(ctx, "read", path); }
    else if (!S_ISREG(info.st_mode)) { tti_no_file(ctx, path, tti_mode_kind(info.st_mode)); }
    else {
        *size = (uint64_t)info.st_size;
        return fd;
    }
    if (fd >= 0) { close(fd); }
    return -1;
}
#endif

/* A regular file of a size that this library reads, or NULL and the error: opening a pipe or a device would
 * wait, or do more than open. */
static FILE *tti_file_open(tt_context *ctx, const char *path) {
    FILE *file;
#ifdef TTI_POSIX
    uint64_t size;
    int fd = tti_file_descriptor(ctx, path, &size);
    if (fd < 0) { return NULL; }
    if (size > TT_MAX_FILE_BYTES) {
        close(fd);
        tti_too_large(ctx, path);
        return NULL;
    }
    file = fdopen(fd, "rb");
    if (!file) { close(fd); }
#else
    tti_file_kind kind = tti_path_kind(path);
    if (kind > TTI_KIND_FILE) {
        tti_no_file(ctx, path, kind);
        return NULL;
    }
    file = fopen(path, "rb");
#endif
    if (!file) { tti_cannot(ctx, "read", path); }
    return file;
}

TT_API tt_status tt_stream_read(tt_context *ctx, void *file, const char *name, tt_text *out) {
    char buffer[16384];
    uint64_t total = 0;
    size_t n;
    tt_status status;
    while ((n = fread(buffer, 1, sizeof buffer, (FILE *)file)) > 0) {
        total += n;
        if (total > TT_MAX_FILE_BYTES) { return tti_too_large(ctx, name); }
        status = tt_text_append(out, buffer, n);
        if (status != TT_OK) { return status; }
    }
    if (ferror((FILE *)file)) { return tti_cannot(ctx, "read", name); }
    return tt_text_append(out, "", 0);
}

TT_API tt_status tt_file_read(tt_context *ctx, const char *path, tt_text *out) {
    FILE *file = tti_file_open(ctx, path);
    tt_status status = file ? tt_stream_read(ctx, file, path, out) : tt_error_status(ctx);
    if (file) { fclose(file); }
    return tti_tried(ctx, "tt_file_read", status);
}

TT_API tt_status tt_file_readable(tt_context *ctx, const char *path) {
    FILE *file = tti_file_open(ctx, path);
    if (!file) { return tt_error_status(ctx); }
    fclose(file);
    return TT_OK;
}

/* ---- [tt:base.writer] replacing a file ----
 * Bytes go to a new file in the same folder, which takes the name `path` only when all of it is on disk:
 * after a crash at any moment the old file or the new one stands there whole. */

typedef struct tti_writer { tt_context *ctx; FILE *file; char *path, *temporary; } tti_writer;

/* Gives up, or ends: a temporary file that is still there goes. */
static void tti_writer_abort(tti_writer *w) {
    if (w->file) { fclose(w->file); }
    if (w->temporary) { remove(w->temporary); }
    tti_strfree(w->ctx, w->path);
    tti_strfree(w->ctx, w->temporary);
    w->file = NULL;
    w->path = w->temporary = NULL;
}

static tt_status tti_writer_fail(tti_writer *w, const char *what) {
    tti_cannot(w->ctx, what, w->path);
    tti_writer_abort(w);
    return TT_ERR_IO;
}

/* A file beside w->path under a name that nobody has. */
static tt_status tti_writer_create(tti_writer *w, size_t folder, unsigned permissions) {
    static const char name[] = "tt-0123456789abcdef.tmp";
    double now = tt_clock();
    uint64_t salt[2];
    int i;
    char *temporary = (char *)tt_alloc(w->ctx, folder + sizeof name, 1);
    if (!temporary) { return TT_ERR_MEM; }
    memcpy(temporary, w->path, folder);
    memcpy(salt, &now, sizeof now);
    salt[1] = (uint64_t)(uintptr_t)w;
    for (i = 0; i < 100 && !w->file; i++) {
        uint64_t number = tt_hash(salt, sizeof salt, (uint64_t)time(NULL) + (uint64_t)i);
        snprintf(temporary + folder, sizeof name, "tt-%016llx.tmp", (unsigned long long)number);
        w->file = tti_file_create(temporary, permissions);
        if (!w->file && errno != EEXIST) { break; }
    }
    if (w->file) {
        w->temporary = temporary;
        return TT_OK;
    }
    tti_cannot(w->ctx, "create", w->path);
    tt_free(w->ctx, temporary, folder + sizeof name, 1);
    return TT_ERR_IO;
}

/* Leaves nothing behind when it fails. */
static tt_status tti_writer_open(tti_writer *w, tt_context *ctx, const char *path) {
    const char *slash = strrchr(path, '/');
    unsigned permissions = 0666;
    tti_file_kind kind = tti_path_stat(path, 0, &permissions);
    tt_status status;
    memset(w, 0, sizeof *w);
    w->ctx = ctx;
    if (!*path) { return tt_fail(ctx, TT_ERR_IO, "cannot write: the path is empty"); }
    if (kind > TTI_KIND_FILE) {
        return tt_fail(ctx, TT_ERR_IO, "cannot write %s: it is %s, expected a regular file or nothing", path,
                       tti_kind_names[kind]);
    }
    w->path = tti_strdup(ctx, path);
    if (!w->path) { return TT_ERR_MEM; }
    status = tti_writer_create(w, slash ? (size_t)(slash + 1 - path) : 0, permissions);
    if (status != TT_OK) { tti_writer_abort(w); }
    return status;
}

static tt_status tti_writer_write(tti_writer *w, const void *bytes, size_t size) {
    if (size && fwrite(bytes, 1, size, w->file) != size) { return tti_writer_fail(w, "write"); }
    return TT_OK;
}

/* In this order: the bytes are on disk, then the name, then the folder that holds the name. */
static tt_status tti_writer_close(tti_writer *w) {
    FILE *file = w->file;
    if (fflush(file) != 0 || tti_sync(file) != 0) { return tti_writer_fail(w, "write"); }
    w->file = NULL;
    if (fclose(file) != 0) { return tti_writer_fail(w, "write"); }
#ifdef _WIN32
    remove(w->path);                       /* rename does not replace there */
#endif
    if (rename(w->temporary, w->path) != 0) { return tti_writer_fail(w, "rename to"); }
    tti_strfree(w->ctx, w->temporary);
    w->temporary = NULL;
    tti_sync_parent(w->path);
    tti_writer_abort(w);
    return TT_OK;
}

TT_API tt_status tt_file_write(tt_context *ctx, const char *path, const void *bytes, size_t size) {
    tti_writer w;
    tt_status status;
    TTI_TRY(tti_writer_open(&w, ctx, path));
    TTI_TRY(tti_writer_write(&w, bytes, size));
    TTI_TRY(tti_writer_close(&w));
done:
    return tti_tried(ctx, "tt_file_write", status);
}

/* Creating the temporary file is the proof; it goes again. */
TT_API tt_status tt_file_writable(tt_context *ctx, const char *path) {
    tti_writer w;
    tt_status status = tti_writer_open(&w, ctx, path);
    if (status == TT_OK) { tti_writer_abort(&w); }
    return status;
}

static tt_status tti_make_dir(tt_context *ctx, const char *path) {
    if (tti_mkdir(path) == 0) { return TT_OK; }
    if (errno != EEXIST) { return tti_cannot(ctx, "create directory", path); }
    if (tti_path_kind(path) == TTI_KIND_FOLDER) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_IO, "cannot create directory %s: something else has this name", path);
}

TT_API tt_status tt_make_dirs(tt_context *ctx, const char *path) {
    char *copy = tti_strdup(ctx, path);
    size_t n = strlen(path), i;
    tt_status status = TT_OK;
    if (!copy) { return TT_ERR_MEM; }
    if (n == 0) { status = tt_fail(ctx, TT_ERR_IO, "cannot create a directory: the path is empty"); }
    for (i = 1; i <= n; i++) {             /* at each end of a name; a slash in front is the root */
        if (path[i] != '/' && path[i] != 0) { continue; }
        copy[i] = 0;
        status = tti_make_dir(ctx, copy);
        copy[i] = path[i];
        if (status != TT_OK) { break; }
    }
    tt_free(ctx, copy, n + 1, 1);
    return tti_tried(ctx, "tt_make_dirs", status);
}

/* ---- [tt:base.json] JSON ----
 * One parser goes over the text twice: first it counts values and bytes of strings, then it fills one block
 * of memory, [header][values][strings]. A value in an array or object is read by recursion, at most 128 deep.
 * Source: RFC 8259. */

#define TTI_JSON_MAX_VALUES ((size_t)1 << 23)

typedef struct tti_json_block {
    size_t bytes, padding;                 /* the size of it all; padding keeps root aligned  */
    tt_json root;
} tti_json_block;

typedef struct tti_json_parser {
    tt_context *ctx;
    const char *text, *at, *end;
    tt_json *nodes;                        /* NULL in the counting pass */
    char *strings;
    size_t n_nodes, n_bytes;
} tti_json_parser;

/* Returns 0, as the functions of the parser do after an error. */
static int tti_json_fail(const tti_json_parser *p, const char *what) {
    int line = 1, column = 1;
    const char *c;
    for (c = p->text; c < p->at && c < p->end; c++) {
        column = *c == '\n' ? 1 : column + 1;
        line += *c == '\n';
    }
    tt_fail(p->ctx, TT_ERR_FILE, "JSON line %d column %d: %s", line, column, what);
    return 0;
}

static void tti_json_space(tti_json_parser *p) {
    while (p->at < p->end && tti_is_space(*p->at)) { p->at++; }
}

/* If c comes next, passes it and returns 1. */
static int tti_json_skip(tti_json_parser *p, char c) {
    if (p->at >= p->end || *p->at != c) { return 0; }
    p->at++;
    return 1;
}

static int tti_json_word(tti_json_parser *p, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n) != 0) { return 0; }
    p->at += n;
    return 1;
}

static void tti_json_put(tti_json_parser *p, uint32_t byte) {
    if (p->strings) { p->strings[p->n_bytes] = (char)(unsigned char)byte; }
    p->n_bytes++;
}

/* UTF-8: the lead byte says how many bytes follow, each of which holds six bits. */
static void tti_json_put_utf8(tti_json_parser *p, uint32_t c) {
    static const unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
    int follow = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    tti_json_put(p, lead[follow] | (c >> 6 * follow));
    while (follow-- > 0) { tti_json_put(p, 0x80 | ((c >> 6 * follow) & 63)); }
}

static int tti_json_hex4(tti_json_parser *p, uint32_t *out) {
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    int i;
    *out = 0;
    if (p->end - p->at < 4) { return 0; }
    for (i = 0; i < 4; i++) {
        const char *found = (const char *)memchr(digits, *p->at++, sizeof digits - 1);
        if (!found) { return 0; }
        *out = *out * 16 + (uint32_t)((found - digits) % 16);
    }
    return 1;
}

/* Behind a backslash. Two surrogates in a row are one character; a lone one becomes U+FFFD. */
static int tti_json_escape(tti_json_parser *p) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found, *second;
    uint32_t c, low;
    if (p->at >= p->end) { return tti_json_fail(p, "text ends within a string"); }
    found = (const char *)memchr(from, *p->at, sizeof from - 1);
    if (found) {
        tti_json_put(p, (unsigned char)to[found - from]);
        p->at++;
        return 1;
    }
    if (!tti_json_skip(p, 'u')) { return tti_json_fail(p, "unknown escape in a string"); }
    if (!tti_json_hex4(p, &c)) { return tti_json_fail(p, "\\u wants four hexadecimal digits"); }
    second = p->at;
    if (c >= 0xD800 && c < 0xDC00 && tti_json_word(p, "\\u")) {
        int pair = tti_json_hex4(p, &low) && low >= 0xDC00 && low < 0xE000;
        if (pair) { c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00); }
        else { p->at = second; }
    }
    tti_json_put_utf8(p, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c);
    return 1;
}

/* Behind the opening quote. */
static int tti_json_string(tti_json_parser *p, const char **string, size_t *length) {
    size_t begin = p->n_bytes;
    for (;;) {
        unsigned char c;
        if (p->at >= p->end) { return tti_json_fail(p, "text ends within a string"); }
        c = (unsigned char)*p->at;
        if (c < 0x20) { return tti_json_fail(p, "control character in a string"); }
        p->at++;
        if (c == '"') { break; }
        if (c != '\\') { tti_json_put(p, c); }
        else if (!tti_json_escape(p)) { return 0; }
    }
    *length = p->n_bytes - begin;
    *string = p->strings ? p->strings + begin : NULL;
    tti_json_put(p, 0);
    return 1;
}

/* Passes decimal digits; returns whether there were any. */
static int tti_json_digits(tti_json_parser *p) {
    const char *begin = p->at;
    while (p->at < p->end && tti_is_decimal(*p->at)) { p->at++; }
    return p->at > begin;
}

/* The characters stay beside the number: more digits than a double has are not lost. */
static int tti_json_number(tti_json_parser *p, tt_json *node) {
    const char *begin = p->at, *wrong = NULL;
    size_t i;
    tti_json_skip(p, '-');
    if (!tti_json_skip(p, '0') && !tti_json_digits(p)) { wrong = "expected a value"; }
    else if (tti_json_skip(p, '.') && !tti_json_digits(p)) {
        wrong = "digits missing after the decimal point";
    } else if (tti_json_skip(p, 'e') || tti_json_skip(p, 'E')) {
        if (!tti_json_skip(p, '+')) { tti_json_skip(p, '-'); }
        if (!tti_json_digits(p)) { wrong = "digits missing in the exponent"; }
    }
    node->length = (size_t)(p->at - begin);
    node->string = p->strings ? p->strings + p->n_bytes : NULL;
    if (wrong) {
        p->at = begin;
        return tti_json_fail(p, wrong);
    }
    if (p->strings) { tt_number_read(begin, node->length, &node->number); }
    for (i = 0; i < node->length; i++) { tti_json_put(p, (unsigned char)begin[i]); }
    tti_json_put(p, 0);
    return 1;
}

static int tti_json_value(tti_json_parser *p, int depth);

/* Behind the opening bracket. The next value is node n_nodes; those within it follow, so siblings are
 * linked. */
static int tti_json_members(tti_json_parser *p, tt_json *node, int depth) {
    int is_object = node->type == TT_JSON_OBJECT;
    char close = is_object ? '}' : ']';
    const char *key = NULL, *wrong = is_object ? "expected ',' or '}'" : "expected ',' or ']'";
    const tt_json **link = &node->child;
    size_t key_length = 0, index;
    tti_json_space(p);
    if (tti_json_skip(p, close)) { return 1; }
    for (;;) {
        tti_json_space(p);
        if (is_object) {
            if (!tti_json_skip(p, '"')) { return tti_json_fail(p, "expected a \"name\""); }
            if (!tti_json_string(p, &key, &key_length)) { return 0; }
            tti_json_space(p);
            if (!tti_json_skip(p, ':')) { return tti_json_fail(p, "expected ':'"); }
        }
        index = p->n_nodes;
        if (!tti_json_value(p, depth + 1)) { return 0; }
        if (p->nodes) {
            p->nodes[index].key = key;
            p->nodes[index].key_length = key_length;
            *link = &p->nodes[index];
            link = &p->nodes[index].next;
        }
        node->length++;
        tti_json_space(p);
        if (tti_json_skip(p, close)) { return 1; }
        if (!tti_json_skip(p, ',')) { return tti_json_fail(p, wrong); }
    }
}

/* The value becomes node n_nodes; in the counting pass it goes to one that is thrown away. */
static int tti_json_value(tti_json_parser *p, int depth) {
    tt_json counted, *node = p->nodes ? p->nodes + p->n_nodes : &counted;
    memset(node, 0, sizeof *node);
    tti_json_space(p);
    if (depth > 128) { return tti_json_fail(p, "nested deeper than 128"); }
    if (p->n_nodes++ >= TTI_JSON_MAX_VALUES) { return tti_json_fail(p, "more than 8388608 values"); }
    if (p->at >= p->end) { return tti_json_fail(p, "text ends where a value is expected"); }
    if (tti_json_skip(p, '"')) {
        node->type = TT_JSON_STRING;
        return tti_json_string(p, &node->string, &node->length);
    }
    if (tti_json_skip(p, '{')) {
        node->type = TT_JSON_OBJECT;
        return tti_json_members(p, node, depth);
    }
    if (tti_json_skip(p, '[')) {
        node->type = TT_JSON_ARRAY;
        return tti_json_members(p, node, depth);
    }
    if (tti_json_word(p, "null")) { return 1; }
    node->type = *p->at == 't' || *p->at == 'f' ? TT_JSON_BOOL : TT_JSON_NUMBER;
    node->number = *p->at == 't';
    if (tti_json_word(p, "true") || tti_json_word(p, "false")) { return 1; }
    return tti_json_number(p, node);
}

static int tti_json_document(tti_json_parser *p) {
    if (!tti_json_value(p, 0)) { return 0; }
    tti_json_space(p);
    return p->at == p->end || tti_json_fail(p, "text goes on after the value");
}

/* The parser runs twice: to check and count, then to fill one block that holds all nodes and strings. */
static tt_json *tti_json_read(tt_context *ctx, const char *text, size_t size) {
    tti_json_parser count, fill;
    tti_json_block *block;
    size_t bytes;
    memset(&count, 0, sizeof count);
    count.ctx = ctx;
    count.text = count.at = text;
    count.end = text + size;
    fill = count;
    if (!tti_json_document(&count)) { return NULL; }
    bytes = sizeof *block + count.n_nodes * sizeof(tt_json) + count.n_bytes;
    block = (tti_json_block *)tt_alloc(ctx, bytes, 1);
    if (!block) { return NULL; }
    block->bytes = bytes;
    fill.nodes = &block->root;
    fill.strings = (char *)(fill.nodes + count.n_nodes);
    tti_json_document(&fill);
    return &block->root;
}

TT_API tt_json *tt_json_parse(tt_context *ctx, const char *text, size_t size) {
    return (tt_json *)tti_made(ctx, "tt_json_parse", tti_json_read(ctx, text, size));
}

TT_API void tt_json_free(tt_context *ctx, tt_json *root) {
    tti_json_block *block;
    if (!root) { return; }
    block = (tti_json_block *)(void *)((char *)root - offsetof(tti_json_block, root));
    tt_free(ctx, block, block->bytes, 1);
}

TT_API const tt_json *tt_json_get(const tt_json *object, const char *key) {
    const tt_json *member, *found = NULL;
    size_t n = strlen(key);
    if (!object || object->type != TT_JSON_OBJECT) { return NULL; }
    for (member = object->child; member; member = member->next) {
        if (member->key_length == n && memcmp(member->key, key, n) == 0) { found = member; }
    }
    return found;
}

TT_API const char *tt_json_text(const tt_json *object, const char *key, const char *fallback) {
    const tt_json *member = tt_json_get(object, key);
    return member && member->type == TT_JSON_STRING ? member->string : fallback;
}

TT_API double tt_json_number(const tt_json *object, const char *key, double fallback) {
    const tt_json *member = tt_json_get(object, key);
    if (!member || (member->type != TT_JSON_NUMBER && member->type != TT_JSON_BOOL)) { return fallback; }
    return member->number;
}

/* 1 if node is a whole number in 0..most (and 2^53): the one way from a number of a file to an integer. */
static int tti_json_whole(const tt_json *node, uint64_t most, uint64_t *out) {
    if (!node || node->type != TT_JSON_NUMBER) { return 0; }
    if (!(node->number >= 0 && node->number <= 9007199254740992.0)) { return 0; }
    if (floor(node->number) != node->number) { return 0; }
    *out = (uint64_t)node->number;
    return *out <= most;
}

TT_API int tt_json_int(const tt_json *object, const char *key, int fallback) {
    uint64_t value;
    return tti_json_whole(tt_json_get(object, key), INT_MAX, &value) ? (int)value : fallback;
}

/* ---- [tt:base.lines] JSON lines ---- */

TT_API tt_status tt_json_lines_open(tt_json_lines *lines, const char *path) {
    lines->text.ctx = lines->ctx;
    lines->name = path;
    return tt_file_read(lines->ctx, path, &lines->text);
}

TT_API void tt_json_lines_close(tt_json_lines *lines) {
    if (lines->text.ctx) { tt_text_free(&lines->text); }
}

/* The first string with a NUL in it; its depth is that of the parser. */
static const tt_json *tti_json_find_nul(const tt_json *node) {
    const tt_json *found = NULL;
    if (node->type == TT_JSON_STRING) { return memchr(node->string, 0, node->length) ? node : NULL; }
    for (node = node->child; node && !found; node = node->next) { found = tti_json_find_nul(node); }
    return found;
}

/* The value of one line, whose error is told with the line's number. */
static tt_status tti_json_line(tt_json_lines *lines, const char *line, size_t size, tt_json **value) {
    tt_context *ctx = lines->ctx;
    const char *stray = tti_utf8_invalid(line, line + size);
    const tt_json *bad;
    char why[TTI_ERROR_SIZE];
    if (stray < line + size) {
        return tt_fail(ctx, TT_ERR_FILE, "%s line %d column %zu: the byte 0x%02X is no UTF-8", lines->name,
                       lines->line, (size_t)(stray - line) + 1, (unsigned)(unsigned char)*stray);
    }
    *value = tt_json_parse(ctx, line, size);
    if (!*value) {
        snprintf(why, sizeof why, "%s", tt_error(ctx));
        return tt_fail(ctx, tt_error_status(ctx), "%s line %d: %s", lines->name, lines->line, why);
    }
    bad = tti_json_find_nul(*value);
    if (!bad) { return TT_OK; }
    tt_fail(ctx, TT_ERR_FILE, "%s line %d: \"%s\" has the character U+0000, expected text without it",
            lines->name, lines->line, bad->key ? bad->key : "a list");
    tt_json_free(ctx, *value);
    *value = NULL;
    return TT_ERR_FILE;
}

TT_API tt_status tt_json_lines_next(tt_json_lines *lines, tt_json **value) {
    const tt_text *text = &lines->text;
    *value = NULL;
    if (lines->at == 0 && text->size >= 3 && memcmp(text->data, "\xef\xbb\xbf", 3) == 0) { lines->at = 3; }
    while (lines->at < text->size) {
        size_t rest = text->size - lines->at;
        const char *line = text->data + lines->at, *end = (const char *)memchr(line, '\n', rest);
        size_t size = end ? (size_t)(end - line) : rest;
        lines->at += size + (end != NULL);
        lines->line++;
        if (strspn(line, " \t\r") < size) { return tti_json_line(lines, line, size, value); }
    }
    return TT_OK;
}

/* What a value is, in words. */
static const char *tti_json_kind(const tt_json *node) {
    static const char *const kinds[] = {"null", "true or false", "a number", "a text", "a list", "an object"};
    return kinds[node->type];
}

TT_API tt_status tt_json_lines_text(const tt_json_lines *lines, const tt_json *value, const char *key,
                                    int numbers, const char **text) {
    const tt_json *node = tt_json_get(value, key);
    *text = NULL;
    if (value->type != TT_JSON_OBJECT) {
        return tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d: it is %s, expected an object", lines->name,
                       lines->line, tti_json_kind(value));
    }
    if (!node) { return TT_OK; }
    if (node->type != TT_JSON_STRING && (node->type != TT_JSON_NUMBER || !numbers)) {
        return tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d: \"%s\" is %s, expected a text%s", lines->name,
                       lines->line, key, tti_json_kind(node), numbers ? " or a number" : "");
    }
    *text = node->string;
    return TT_OK;
}

/* ---- [tt:base.context] the context ---- */

/* The backend that is meant; NULL is the CPU. */
static tt_status tti_default_backend(tt_context *ctx, const tt_backend **backend) {
    const char *wish = NULL;
#ifdef TT_CUDA
    wish = getenv("TT_BACKEND");
    if (wish && strcmp(wish, "cuda") == 0) {
        *backend = tt_cuda_backend(0);
        return TT_OK;
    }
#endif
    *backend = NULL;
    if (!wish || !*wish || strcmp(wish, "cpu") == 0) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "tt_create: TT_BACKEND is \"%s\", expected cpu or cuda", wish);
}

/* Opens the CPU backend, whose kernels serve the host's side of every other one too, and the one of desc. */
static tt_status tti_backends_open(tt_context *ctx, const tt_backend *backend) {
    tt_status status;
    TTI_TRY(ctx->backend->open(ctx, ctx->backend, &ctx->cpu_state));
    ctx->backend_state = ctx->cpu_state;
    if (!backend) { TTI_TRY(tti_default_backend(ctx, &backend)); }
    if (!backend || backend == ctx->backend) { return TT_OK; }
    ctx->backend = backend;
    ctx->backend_state = NULL;
    TTI_TRY(backend->open(ctx, backend, &ctx->backend_state));
done:
    return status;
}

/* What desc says, with the environment's wishes where it says nothing. */
static tt_status tti_context_fill(tt_context *ctx, const tt_desc *desc) {
    const char *kernel = desc->kernel ? desc->kernel : getenv("TT_KERNEL");
    const char *matmul = desc->matmul ? desc->matmul : getenv("TT_MATMUL");
    ctx->log = desc->log;
    ctx->log_user = desc->log_user;
    ctx->device.on_backend = 1;
    ctx->kernel_name = "none";
    snprintf(ctx->kernel_wish, sizeof ctx->kernel_wish, "%s", kernel ? kernel : "");
    snprintf(ctx->matmul_wish, sizeof ctx->matmul_wish, "%s", matmul ? matmul : "");
    ctx->backend = tt_cpu_backend();
    ctx->n_threads = 1;
    if (desc->n_threads < 0 || desc->n_threads > TTI_MAX_THREADS) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_create: n_threads is %d, expected 0 .. %d", desc->n_threads,
                       TTI_MAX_THREADS);
    }
    ctx->n_threads = tti_n_threads(desc->n_threads);
    return tti_backends_open(ctx, desc->backend);
}

TT_API tt_context *tt_create(const tt_desc *desc) {
    static const tt_desc zero = TT_INIT;
    tt_allocator allocator;
    tt_context *ctx;
    if (!desc) { desc = &zero; }
    allocator = desc->allocator;
    if (!allocator.alloc || !allocator.free) {
        allocator.alloc = tti_default_alloc;
        allocator.free = tti_default_free;
    }
    ctx = (tt_context *)allocator.alloc(allocator.user, sizeof *ctx);
    if (!ctx) { return NULL; }
    memset(ctx, 0, sizeof *ctx);
    ctx->allocator = allocator;
    ctx->broken = tti_context_fill(ctx, desc);
    ctx->graph_error = ctx->broken != TT_OK;
    if (ctx->broken != TT_ERR_MEM) { return ctx; }      /* a context that says what is wrong with desc */
    tt_destroy(ctx);
    return NULL;
}

/* Arenas first: they are the backend's memory. */
TT_API void tt_destroy(tt_context *ctx) {
    if (!ctx) { return; }
    tti_arena_destroy(ctx, &ctx->device);
    tti_arena_destroy(ctx, &ctx->host);
    if (ctx->backend_state && ctx->backend_state != ctx->cpu_state) {
        ctx->backend->close(ctx, ctx->backend_state);
    }
    tti_team_destroy(ctx);
    if (ctx->cpu_state) { tt_cpu_backend()->close(ctx, ctx->cpu_state); }
    ctx->allocator.free(ctx->allocator.user, ctx, sizeof *ctx);
}

TT_API int tt_threads(const tt_context *ctx) { return ctx->n_threads; }
TT_API const char *tt_kernel(const tt_context *ctx) { return ctx->kernel_name; }
TT_API const tt_backend *tt_backend_get(const tt_context *ctx) { return ctx->backend; }
TT_API void *tt_backend_state(const tt_context *ctx) { return ctx->backend_state; }

/* ==== 2. kernels ===========================================================================
 * The CPU backend. Each entry of the backend table checks its arguments, describes the work in the small
 * struct of its family of kernels (tti_gemm, tti_norm_args, tti_binary_args, ...), cuts it into items (rows,
 * columns, values, tiles: whatever can be computed apart) and hands it to tti_run, which holds the only
 * parallel loop. A kernel computes a range of items. The kernels are appendix A: written once, and compiled
 * once per instruction set; a table of them is chosen when the context opens.
 *
 * Why results are the same bits for any number of threads and any batch: an output value belongs to one
 * item, and within the item it is summed in an order that depends on its own row only.
 *
 * Uses chapter 1: memory, errors, tti_parallel. */

/* ---- [tt:kernels.build] compiler and sizes ---- */
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define TTI_X86 1
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__aarch64__)
#define TTI_ARM 1
#endif
#ifdef __cplusplus
}
#endif
#ifdef TTI_X86
#include <immintrin.h>
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define TTI_DOT_BF16 1               /* the compiler knows AVX512-BF16: products of pairs of bf16 */
#endif
#endif
#ifdef TTI_ARM
#include <arm_neon.h>
#endif
#if defined(__wasm_simd128__) && !defined(TTI_SIMD128)      /* a test may want the set elsewhere */
#define TTI_SIMD128 1
#endif
#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define TTI_INLINE static inline __attribute__((always_inline))
#define TTI_PREFETCH(p) __builtin_prefetch((const void *)(p), 1)
#define TTI_PREFETCH_L2(p) __builtin_prefetch((const void *)(p), 0, 2)
#else
#define TTI_INLINE static inline
#define TTI_PREFETCH(p) ((void)(p))
#define TTI_PREFETCH_L2(p) ((void)(p))
#endif

/* Before a loop of constant length over an array of vectors: without the loop each has a register of its
 * own. */
#if defined(__clang__)
#define TTI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__) && __GNUC__ >= 8
#define TTI_UNROLL _Pragma("GCC unroll 16")
#else
#define TTI_UNROLL
#endif

/* Sizes of blocks. Those that count columns of C are multiples of every set's tile width (32, 24, 12, 3).
 * A panel of B (TTI_DEPTH x 32 floats, 48 KB) is to stay in the first cache while it meets the rows of an
 * item, and those (TTI_ITEM_ROWS x TTI_DEPTH floats, 147 KB) in the second while they meet all panels. */
#define TTI_ITEM_ROWS ((size_t)96)       /* gemm: rows of C in an item ...                      */
#define TTI_ITEM_COLUMNS ((size_t)384)   /* ... and columns                                     */
#define TTI_DEPTH ((size_t)384)          /* gemm: steps of k before the next rows are taken     */
#define TTI_BLOCK_COLUMNS ((size_t)768)  /* gemm: columns of B packed at a time                 */
#define TTI_SMALL_C ((size_t)40000)      /* gemm: a C not worth the threads' meetings that packing costs */
#define TTI_SQUARES ((size_t)16384)      /* squares: values in one sum                          */
#define TTI_KEYS 96                      /* attention: keys in a block                          */
#define TTI_QUERIES ((size_t)48)         /* attention: rows in a block                          */
#define TTI_VOCAB_ROWS ((size_t)192)     /* log-probs: rows times columns of logits at once     */
#ifndef TTI_VOCAB_BLOCK
#define TTI_VOCAB_BLOCK ((size_t)2304)
#endif
#define TTI_GEMM_SCRATCH ((TTI_ITEM_ROWS + 32) * TTI_DEPTH + 16)      /* rows of an item and a panel of B */

static size_t tti_least(size_t a, size_t b) { return a < b ? a : b; }

static float *tti_aligned(float *p) {
    size_t misfit = (size_t)((uintptr_t)p & 63) / sizeof(float);
    return misfit ? p + (16 - misfit) : p;
}

/* ---- [tt:kernels.half] half precision: to the nearest, ties to even ----
 * bf16 is the upper half of a float. f16 has 5 bits of exponent, where a float has 8 (bias 15, not 127), and
 * 10 bits of fraction, where a float has 23. */
static uint32_t tti_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float tti_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint16_t tti_to_bf16(float x) {
    uint32_t bits = tti_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) { return (uint16_t)((bits >> 16) | 0x40u); }   /* stays a NaN */
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static float tti_from_bf16(uint16_t h) { return tti_float((uint32_t)h << 16); }

/* To the nearest, ties to even: half a unit of the last place less one is added, and the bit that stays
 * last. */
static uint16_t tti_to_f16(float x) {
    uint32_t bits = tti_bits(x), sign = (bits >> 16) & 0x8000u, half;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) { return (uint16_t)(sign | 0x7E00u); }         /* NaN                  */
    if (bits >= 0x477FF000u) { return (uint16_t)(sign | 0x7C00u); }        /* rounds beyond 65504  */
    if (bits < 0x38800000u) {                   /* denormal: the sum with 0.5 rounds at 2^-24 */
        half = tti_bits(tti_float(bits) + 0.5f) - 0x3F000000u;
    } else {
        half = (bits - 0x38000000u + 0xFFFu + ((bits >> 13) & 1u)) >> 13;
    }
    return (uint16_t)(sign | half);
}

static float tti_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7FFFu;
    if (rest >= 0x7C00u) { return tti_float(sign | 0x7F800000u | (rest & 0x3FFu) << 13); }
    if (rest >= 0x400u) { return tti_float(sign | ((rest << 13) + 0x38000000u)); }
    return tti_float(sign | tti_bits((float)rest * (1.0f / 16777216.0f)));
}

/* ---- [tt:kernels.describe] what kernels work on ----
 * A kernel knows its own struct (args), has the scratch memory of its thread, and computes the items from
 * begin to end - 1. */
typedef void (*tti_kernel)(const void *args, float *scratch, size_t begin, size_t end);

/* Elementwise; items: values. */
typedef struct tti_unary_args {      /* y = op(x);  dx += dy op'(x) */
    int op;                          /* of tt_unary                 */
    float p0, p1;
    const float *x, *dy;
    float *y, *dx;                   /* backward reads y            */
} tti_unary_args;

typedef struct tti_binary_args {     /* y = op(a, b);  da, db +=    */
    int op;                          /* of tt_binary                */
    const float *a, *b, *dy;
    float *y, *da, *db;              /* da, db: each may be NULL    */
} tti_binary_args;

typedef struct tti_axpy_args {       /* y += alpha x                */
    float alpha;
    const float *x;
    float *y;
} tti_axpy_args;

/* y[rows ? rows[i] : 0] += x[i] for i = 0 .. n-1, in order; items: columns. */
typedef struct tti_add_rows_args {
    size_t n, dim;
    const int32_t *rows;
    const float *x;
    float *y;
} tti_add_rows_args;

typedef struct tti_store_keys_args { /* rows of k to their places in a cache; items: rows of k */
    size_t tile, width;              /* key_tile; channels of all heads */
    const int32_t *rows;
    const float *k;
    float *cache;
} tti_store_keys_args;

typedef struct tti_squares_args {    /* sums[i]: of TTI_SQUARES values; items: these sums */
    size_t n;
    const float *x;
    double *sums;
} tti_squares_args;

typedef struct tti_rope_args {       /* items: rows */
    size_t heads, head_dim;
    const int32_t *positions;
    const float *x, *cosines, *sines;     /* tables [positions, head_dim / 2] */
    float *y;
    int inverse;
} tti_rope_args;

typedef struct tti_norm_args {       /* mean NULL: RMSNorm; items: rows, of dw and db columns */
    size_t n, dim;
    float eps;
    const float *x, *w, *b, *dy;
    float *y, *mean, *rstd, *dx, *dw, *db;
} tti_norm_args;

/* ---- [tt:kernels.product] the description of a matrix product ----
 * C = A B is computed in tiles, which stay in registers while k runs. Both factors are seen in the same way:
 * a lane is a row of A or a column of B, and has k values. A panel holds a few neighbouring lanes as tiles
 * read them, side by side for each k:
 *
 *     a factor, lane by lane          its panels of 3 lanes
 *        k = 0  1  2                     k = 0          1          2
 *           a0 a1 a2                        a0 b0 c0   a1 b1 c1   a2 b2 c2
 *           b0 b1 b2                        d0 e0 0    d1 e1 0    d2 e2 0
 *           c0 c1 c2
 *           d0 d1 d2
 *           e0 e1 e2
 *
 * Panels of B are as wide as a tile; the last one is filled up with zeros. Panels of A have as many lanes as
 * the tile has rows, fewer where only few are left. Panels of pairs hold bf16: k and k + 1 of a lane in the
 * lower and the upper half of one float, so that a step of a panel is two of k. */
typedef struct tti_factor {
    const float *values;             /* of lane l and k: values[l * lane_step + k * k_step] */
    const uint16_t *half;            /* the same in bf16, instead of values                 */
    size_t lane_step, k_step;
} tti_factor;

static tti_factor tti_factor_of(const float *values, size_t lane_step, size_t k_step) {
    tti_factor f = {values, NULL, lane_step, k_step};
    return f;
}

/* The part that begins at (lane, k). */
static tti_factor tti_factor_at(const tti_factor *f, size_t lane, size_t k) {
    size_t skip = lane * f->lane_step + k * f->k_step;
    tti_factor part = *f;
    if (f->half) { part.half += skip; }
    else { part.values += skip; }
    return part;
}

static float tti_factor_value(const tti_factor *f, size_t lane, size_t k) {
    size_t at = lane * f->lane_step + k * f->k_step;
    return f->half ? tti_from_bf16(f->half[at]) : f->values[at];
}

/* Whether the k values of a lane can be moved two at a time: they are bf16 and lie in pairs. */
static int tti_factor_has_pairs(const tti_factor *f, size_t k) {
    return f->half && f->k_step == 1 && f->lane_step % 2 == 0 && k % 2 == 0;
}

/* Steps of k values in a panel. */
static size_t tti_panel_steps(int pairs, size_t k) { return pairs ? (k + 1) / 2 : k; }

typedef struct tti_panels {
    float *data;                     /* NULL: there are none              */
    size_t lane, k;                  /* where they begin                  */
    size_t depth;                    /* steps from one panel to the next  */
    int pairs;
} tti_panels;

/* Of the panel that begins with `lane` and is `width` lanes wide, what stands from k on. */
static float *tti_panel_at(const tti_panels *p, size_t lane, size_t width, size_t k) {
    return p->data + (lane - p->lane) * p->depth + tti_panel_steps(p->pairs, k - p->k) * width;
}

typedef struct tti_packing {         /* lanes on their way into panels            */
    tti_factor from;                 /* begins with the first lane and k          */
    size_t lanes, width, k;          /* width: lanes of a panel                   */
    int rounds, pairs;               /* to bf16; two k in a float                 */
} tti_packing;

/* Rows m0 .. m1-1 and columns n0 .. n1-1 of C over k0 .. k1-1. */
typedef struct tti_block { size_t m0, m1, n0, n1, k0, k1; } tti_block;

typedef struct tti_gemm {
    /* the problem */
    size_t m, n, k, c_step;          /* c_step: from row to row of c and y      */
    tti_factor a, b;
    const float *bias;
    float *c, *y;                    /* y = activation(c)                       */
    int activation, accumulate;
    int rounds;                      /* factors are rounded to bf16 ...         */
    int dot;                         /* ... and multiplied as pairs of bf16     */
    /* how it is cut */
    int few;                         /* few rows: an item is a panel of B and all rows; else item_rows rows */
    size_t item_rows;
    tti_block block;                 /* what is packed or multiplied now        */
    tti_panels packed_a, packed_b;
} tti_gemm;

static tti_gemm tti_gemm_sized(size_t m, size_t n, size_t k, float *c, size_t c_step) {
    tti_gemm g;
    memset(&g, 0, sizeof g);
    g.m = g.block.m1 = m;
    g.n = g.block.n1 = n;
    g.k = g.block.k1 = k;
    g.c = c;
    g.c_step = c_step;
    return g;
}

/* A tile of C: a few rows times one panel of B. Its form is how it reads A: a panel, or rows that lie side by
 * side in memory; rows along k; a panel of pairs. */
enum { TTI_SIDE_BY_SIDE, TTI_ALONG_K, TTI_IN_PAIRS };

typedef struct tti_tile {
    int form;                        /* how A is read                                         */
    size_t rows, k;                  /* k: steps                                              */
    const float *a, *b;
    size_t a_step, b_step;           /* from step to step; of A along k: from row to row      */
    const float *begin;              /* what sums begin with; NULL = zero                     */
    size_t begin_step;               /* from row to row                                       */
    float *c;
    size_t c_step;
    uintptr_t next;                  /* memory to be fetched meanwhile, or 0: a row of B ...  */
    size_t every;                    /* ... each so many steps                                */
} tti_tile;

/* A sweep: one row of A times one or more panels of B that were made before. Panels of floats; of pairs that
 * are widened to floats; of pairs that are multiplied as they are. */
enum { TTI_FLOATS, TTI_WIDENED, TTI_PAIRS };

typedef struct tti_sweep {
    size_t panels, k;                /* k: values of a, which are pairs in TTI_PAIRS          */
    const float *a, *b;
    size_t a_step, apart;            /* from step to step; from panel to panel                */
    const float *begin;              /* what sums begin with; NULL = zero                     */
    float *c;
} tti_sweep;

/* Whether A is copied into panels: where few rows meet many panels of B, where the rows of a tile would share
 * cache sets (a multiple of 2 KB apart), or where each k would touch a page of its own. */
static int tti_gemm_packs_a(const tti_gemm *g) {
    if (g->rounds || (g->few && g->packed_b.data && g->m > 1)) { return 1; }
    if (g->a.lane_step == 1) { return g->a.k_step > 128 && g->m * g->n > TTI_SMALL_C; }
    return g->m > 8 && (g->few || g->a.lane_step % 512 == 0);
}

/* ---- [tt:kernels.softmax] softmax of a row that arrives in blocks ----
 * sum = sum of exp(z - max), dot = sum of exp(z - max) (z - max). A block with a larger max shrinks both by
 * exp(old max - max). At the end
 *     log p(target) = target - max - log(sum),      entropy = log(sum) - dot / sum. */
typedef struct tti_softmax {
    float max, target;
    double sum, dot;
} tti_softmax;

static void tti_softmax_begin(tti_softmax *s) {
    s->max = -HUGE_VALF;
    s->target = 0.0f;
    s->sum = s->dot = 0.0;
}

/* max: of the block and of all before; sum, dot: of the block. */
static void tti_softmax_merge(tti_softmax *s, float max, float sum, float dot) {
    double gap = s->sum > 0 ? (double)s->max - (double)max : 0.0, shrink = exp(gap);
    s->dot = (s->dot + s->sum * gap) * shrink + (double)dot;
    s->sum = s->sum * shrink + (double)sum;
    s->max = max;
}

static void tti_softmax_end(const tti_softmax *s, float *logprob, float *entropy, float *lse) {
    double log_sum = log(s->sum);
    if (logprob) { *logprob = (float)((double)s->target - (double)s->max - log_sum); }
    if (entropy) { *entropy = (float)(log_sum - s->dot / s->sum); }
    if (lse) { *lse = (float)((double)s->max + log_sum); }
}

typedef struct tti_logits_args {     /* a block of logits; items: rows */
    float *dz;                       /* backward: logits, and then their gradient, in place */
    const float *z;                  /* forward                           */
    size_t columns, stride;
    size_t first;                    /* vocabulary entry of column 0      */
    float inv_temperature;
    const int32_t *targets;
    tti_softmax *states;
    const float *dlogprobs, *dentropy, *entropy, *lse;
} tti_logits_args;

/* ---- [tt:kernels.queries] attention: blocks of queries ----
 * A block holds up to TTI_QUERIES rows: tokens of one sequence times the heads of one group, which share a
 * key-value head. Its row r is token + r / group, head + r % group. An item is a block and a key-value head:
 * number i / n_kv_heads of the blocks of all sequences, and i % n_kv_heads. */
typedef struct tti_queries {
    size_t token, rows, group, head, kv_head;
    size_t position, key_row;        /* of the first token; the row of key 0 */
    size_t shared;                   /* so many keys are those of row 0 on   */
} tti_queries;

/* The row of a key that begins a block. */
static size_t tti_key_row(const tti_queries *u, size_t key0) {
    return key0 < u->shared ? key0 : u->key_row + key0;
}

static size_t tti_block_tokens(const tt_attention_args *a) {
    size_t group = (size_t)(a->n_heads / a->n_kv_heads);
    return group < TTI_QUERIES ? TTI_QUERIES / group : 1;
}

static size_t tti_sequence_blocks(const tt_attention_args *a, size_t sequence) {
    size_t tokens = (size_t)(a->host_offsets[sequence + 1] - a->host_offsets[sequence]);
    size_t per_block = tti_block_tokens(a);
    return (tokens + per_block - 1) / per_block;
}

static size_t tti_first_block(const tt_attention_args *a, size_t sequence) {
    size_t s, blocks = 0;
    for (s = 0; s < sequence; s++) { blocks += tti_sequence_blocks(a, s); }
    return blocks;
}

/* Scratch of a block in the backward: [rows, head_dim], [rows, TTI_KEYS], [rows]; rest: of products. */
typedef struct tti_queries_back {
    float *q, *dq, *dout, *out, *s, *dp, *lse, *delta, *rest;
} tti_queries_back;

/* Where a walk over the items stands, which only grow; zero at first. */
typedef struct tti_walk { size_t sequence, first_block; } tti_walk;

/* Items of one thread only grow, so that the search for the sequence goes on where it stopped. */
static tti_queries tti_queries_of(const tt_attention_args *a, size_t item, tti_walk *walk) {
    size_t per_block = tti_block_tokens(a), block = item / (size_t)a->n_kv_heads, blocks, s, first, end;
    tti_queries u;
    for (;;) {
        blocks = tti_sequence_blocks(a, walk->sequence);
        if (block - walk->first_block < blocks) { break; }
        walk->first_block += blocks;
        walk->sequence++;
    }
    s = walk->sequence;
    first = (size_t)a->host_offsets[s];
    end = (size_t)a->host_offsets[s + 1];
    u.token = first + (block - walk->first_block) * per_block;
    u.group = (size_t)(a->n_heads / a->n_kv_heads);
    u.rows = tti_least(end - u.token, per_block) * u.group;
    u.kv_head = item % (size_t)a->n_kv_heads;
    u.head = u.kv_head * u.group;
    u.position = (a->query_start ? (size_t)a->query_start[s] : 0) + (u.token - first);
    u.key_row = a->key_start ? (size_t)a->key_start[s] : first;
    u.shared = (size_t)a->shared_keys;
    return u;
}

/* ---- [tt:kernels.sets] kernel sets ----
 * The header includes itself once per instruction set; it then gives appendix A alone, whose functions are
 * tti_avx2_norm and so on, and whose last word is the set's table. The list names all kernels. */
#define TTI_KERNEL_LIST(X) \
    X(pack_a) X(pack_b) X(multiply_panels) X(multiply_blocks) \
    X(attention_forward) X(attention_backward) X(logits_scan) X(logits_back) \
    X(norm) X(norm_dx) X(norm_dw) X(rope) \
    X(unary) X(unary_back) X(binary) X(binary_back) X(axpy) X(add_rows) X(squares) X(adamw)

typedef struct tti_kernels {
    const char *name;
    size_t tile_rows, tile_columns;
#define TTI_FIELD(name) tti_kernel name;
    TTI_KERNEL_LIST(TTI_FIELD)
#undef TTI_FIELD
} tti_kernels;

static float tti_normal_cdf(float x) { return 0.5f * erfcf(-0.707106781f * x); }

#ifndef TT_HEADER_NAME
#define TT_HEADER_NAME "thinktuning.h"
#endif
#define TTI_PASS_PORTABLE 0
#define TTI_PASS_AVX2 1
#define TTI_PASS_AVX512 2
#define TTI_PASS_NEON 3
#define TTI_PASS_SIMD128 4
#define TTI_SIMD_PASS 0
#include TT_HEADER_NAME
#undef TTI_SIMD_PASS
#ifdef TTI_X86
#define TTI_SIMD_PASS 1
#include TT_HEADER_NAME
#undef TTI_SIMD_PASS
#define TTI_SIMD_PASS 2
#include TT_HEADER_NAME
#undef TTI_SIMD_PASS
#endif
#ifdef TTI_ARM
#define TTI_SIMD_PASS 3
#include TT_HEADER_NAME
#undef TTI_SIMD_PASS
#endif
#ifdef TTI_SIMD128
#define TTI_SIMD_PASS 4
#include TT_HEADER_NAME
#undef TTI_SIMD_PASS
#endif

/* ---- [tt:kernels.choose] choosing a set ---- */
typedef struct tti_cpu {
    const tti_kernels *kernels;
    int rounds, dot;                      /* of weight products: see tti_gemm          */
    char name[32];                        /* what tt_kernel says, if not that of the set */
    float *shared, *threads, *block;      /* packed factors, sums; scratch of each thread; logits */
    size_t shared_size, threads_size, block_size, thread_size;
} tti_cpu;

/* The n-th best set that this CPU runs, or NULL. */
static const tti_kernels *tti_kernels_at(int n) {
    const tti_kernels *sets[5];
    int count = 0;
#ifdef TTI_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        sets[count++] = &tti_avx512_kernels;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        sets[count++] = &tti_avx2_kernels;
    }
#endif
#ifdef TTI_ARM
    sets[count++] = &tti_neon_kernels;
#endif
#ifdef TTI_SIMD128
    sets[count++] = &tti_simd128_kernels;
#endif
    sets[count++] = &tti_portable_kernels;
    return n < count ? sets[n] : NULL;
}

static const tti_kernels *tti_kernels_find(tt_context *ctx) {
    const char *wish = ctx->kernel_wish;
    char names[64] = "";
    const tti_kernels *set;
    int n;
    for (n = 0; (set = tti_kernels_at(n)) != NULL; n++) {
        if (!wish[0] || strcmp(wish, set->name) == 0) { return set; }
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", n ? ", " : "", set->name);
    }
    tt_fail(ctx, TT_ERR_ARG, "tt_create: kernel (or TT_KERNEL) is \"%s\", expected one of: %s", wish, names);
    return NULL;
}

/* Whether this CPU multiplies pairs of bf16, and (`pays`) faster than as many floats: AMD's do so twice as
 * fast (Zen 5), Intel's half as fast (Sapphire Rapids). */
static int tti_dot_usable(const tti_cpu *cpu, int pays) {
#ifdef TTI_DOT_BF16
    return cpu->kernels == &tti_avx512_kernels && __builtin_cpu_supports("avx512bf16")
        && (!pays || __builtin_cpu_is("amd"));
#else
    (void)cpu;
    (void)pays;
    return 0;
#endif
}

/* How products are made whose factors are rounded to bf16: as pairs of bf16, or as floats after rounding. */
static tt_status tti_cpu_open_bf16(tt_context *ctx, tti_cpu *cpu) {
    const char *wish = ctx->matmul_wish;
    int any = strcmp(wish, "bf16") == 0;
    if (!wish[0] || strcmp(wish, "f32") == 0) { return TT_OK; }
    cpu->rounds = 1;
    cpu->dot = (any || strcmp(wish, "dot-bf16") == 0) && tti_dot_usable(cpu, any);
    if (!any && !cpu->dot) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_create: matmul (or TT_MATMUL) is \"%s\", expected \"f32\", "
                       "\"bf16\", or \"dot-bf16\" if this CPU and \"%s\" have it", wish, cpu->kernels->name);
    }
    snprintf(cpu->name, sizeof cpu->name, "%s+%s", cpu->kernels->name, cpu->dot ? "dot-bf16" : "bf16");
    ctx->kernel_name = cpu->name;
    return TT_OK;
}

static tt_status tti_cpu_open(tt_context *ctx, const tt_backend *self, void **state) {
    const tti_kernels *kernels = tti_kernels_find(ctx);
    tti_cpu *cpu;
    (void)self;
    if (!kernels) { return TT_ERR_ARG; }
    cpu = (tti_cpu *)tt_alloc(ctx, 1, sizeof *cpu);
    if (!cpu) { return TT_ERR_MEM; }
    cpu->kernels = kernels;
    ctx->kernel_name = kernels->name;
    *state = cpu;
    return tti_cpu_open_bf16(ctx, cpu);
}

static void tti_cpu_close(tt_context *ctx, void *state) {
    tti_cpu *cpu = (tti_cpu *)state;
    tt_free(ctx, cpu->shared, cpu->shared_size, sizeof(float));
    tt_free(ctx, cpu->threads, cpu->threads_size, sizeof(float));
    tt_free(ctx, cpu->block, cpu->block_size, sizeof(float));
    tt_free(ctx, cpu, 1, sizeof *cpu);
}

static tti_cpu *tti_cpu_of(tt_context *ctx) { return (tti_cpu *)ctx->cpu_state; }

static const tti_kernels *tti_kernels_of(tt_context *ctx) { return tti_cpu_of(ctx)->kernels; }

/* ---- [tt:kernels.run] scratch memory, and the parallel loop ----
 * Scratch memory grows to the largest size asked for and stays; its content does not survive growth. */
static tt_status tti_scratch(tt_context *ctx, float **memory, size_t *size, size_t want) {
    float *bigger;
    if (want <= *size) { return TT_OK; }
    bigger = (float *)tt_alloc(ctx, want, sizeof(float));
    if (!bigger) { return TT_ERR_MEM; }
    tt_free(ctx, *memory, *size, sizeof(float));
    *memory = bigger;
    *size = want;
    return TT_OK;
}

static tt_status tti_thread_scratch(tt_context *ctx, size_t want) {
    tti_cpu *cpu = tti_cpu_of(ctx);
    size_t each = want > cpu->thread_size ? want : cpu->thread_size, all;
    if (!tti_mul_size(each, (size_t)ctx->n_threads, &all)) {
        return tt_fail(ctx, TT_ERR_MEM, "out of memory: scratch of the kernels");
    }
    if (tti_scratch(ctx, &cpu->threads, &cpu->threads_size, all) != TT_OK) { return TT_ERR_MEM; }
    cpu->thread_size = each;
    return TT_OK;
}

typedef struct tti_pieces {
    tti_kernel kernel;
    const void *args;
    size_t n, each;                  /* items in all, and in a piece */
    const tti_cpu *cpu;
} tti_pieces;

static void tti_run_piece(void *user, int part, int worker) {
    const tti_pieces *p = (const tti_pieces *)user;
    size_t begin = (size_t)part * p->each, end = tti_least(begin + p->each, p->n);
    float *scratch = p->cpu->threads ? p->cpu->threads + (size_t)worker * p->cpu->thread_size : NULL;
    if (begin < end) { p->kernel(p->args, scratch, begin, end); }
}

/* Runs items 0 .. n-1, in parallel if they are worth it. cost: floating point operations of an item, roughly.
 * Up to 16 pieces a thread: one that the system interrupts leaves little to wait for. */
static tt_status tti_run(tt_context *ctx, tti_kernel kernel, const void *args, size_t n, size_t cost) {
    const size_t worth = (size_t)1 << 18;
    size_t threads = (size_t)ctx->n_threads, parts = tti_least(n, 16 * threads);
    tti_pieces p = {kernel, args, n, n, tti_cpu_of(ctx)};
    if (n == 0) { return TT_OK; }
    if (threads == 1 || n <= worth / (cost ? cost : 1)) { parts = 1; }
    if (parts > 1) {
        p.each = (n + parts - 1) / parts;
        if (p.each > 64) { p.each = (p.each + 63) / 64 * 64; }     /* threads share no cache line of values */
    }
    return tti_parallel(ctx, tti_run_piece, &p, (int)parts);
}

/* ---- [tt:kernels.memory] memory ---- */
static void *tti_cpu_alloc(tt_context *ctx, size_t bytes) { return tti_alloc_raw(ctx, bytes); }

static void tti_cpu_free(tt_context *ctx, void *memory, size_t bytes) { tt_free(ctx, memory, bytes, 1); }

static tt_status tti_cpu_copy(tt_context *ctx, void *to, const void *from, size_t bytes) {
    (void)ctx;
    if (bytes) { memmove(to, from, bytes); }
    return TT_OK;
}

#define TTI_ZERO_PIECE ((size_t)1 << 17)      /* bytes */
typedef struct tti_zeros {
    char *to;
    size_t n;
} tti_zeros;

static void tti_zero_piece(void *user, int part, int worker) {
    const tti_zeros *z = (const tti_zeros *)user;
    size_t begin = (size_t)part * TTI_ZERO_PIECE;
    (void)worker;
    memset(z->to + begin, 0, tti_least(z->n - begin, TTI_ZERO_PIECE));
}

static tt_status tti_cpu_zero(tt_context *ctx, void *to, size_t bytes) {
    tti_zeros z = {(char *)to, bytes};
    return tti_parallel(ctx, tti_zero_piece, &z, (int)((bytes + TTI_ZERO_PIECE - 1) / TTI_ZERO_PIECE));
}

static tt_status tti_cpu_sync(tt_context *ctx) {
    (void)ctx;
    return TT_OK;
}

/* ---- [tt:kernels.gemm] matrix product: C = A B, see [tt:kernels.product] ----
 * Few rows: an item is a panel of B and all rows. Each panel is used once, so the thread that multiplies it
 * packs it for itself; A is packed for all.
 *
 * Many rows: an item is a block of rows and columns. B is packed for all, TTI_DEPTH x TTI_BLOCK_COLUMNS at a
 * time, unless its columns lie side by side and its rows near each other. A thread packs the rows of A of its
 * item; where factors are rounded all rows are packed together, so that each is rounded once. */
static tti_gemm tti_gemm_of(const tti_cpu *cpu, const tt_gemm_args *args) {
    size_t lda = (size_t)args->lda, ldb = (size_t)args->ldb;
    size_t m = (size_t)args->m, n = (size_t)args->n, k = (size_t)args->k;
    tti_gemm g = tti_gemm_sized(m, n, k, args->c, (size_t)args->ldc);
    g.a = args->transpose_a ? tti_factor_of(args->a, 1, lda) : tti_factor_of(args->a, lda, 1);
    g.b = args->transpose_b ? tti_factor_of(args->b, ldb, 1) : tti_factor_of(args->b, 1, ldb);
    g.b.half = args->half_b;
    g.bias = args->bias;
    g.accumulate = args->accumulate;
    g.activation = (int)args->activation;
    g.y = args->y;
    g.rounds = cpu->rounds;
    g.dot = cpu->dot;
    g.packed_b.data = args->panels ? tti_aligned((float *)(uintptr_t)args->panels) : NULL;
    g.packed_b.pairs = g.dot || tti_factor_has_pairs(&g.b, g.k);
    g.packed_b.depth = tti_panel_steps(g.packed_b.pairs, g.k);
    return g;
}

/* Items of multiply_blocks: fewer rows in each until there is work for all threads. */
static size_t tti_gemm_items(const tt_context *ctx, tti_gemm *g) {
    size_t columns = g->block.n1 - g->block.n0;
    size_t groups = (columns + TTI_ITEM_COLUMNS - 1) / TTI_ITEM_COLUMNS, enough = 8 * (size_t)ctx->n_threads;
    g->item_rows = TTI_ITEM_ROWS;
    while (g->item_rows > TTI_ITEM_ROWS / 4 && g->m / g->item_rows * groups < enough) { g->item_rows /= 2; }
    return (g->m + g->item_rows - 1) / g->item_rows * groups;
}

/* Shared memory for a block of B and for all rows of A, of the same depth. */
static tt_status tti_gemm_scratch(tt_context *ctx, tti_gemm *g, size_t deep, int pack_b, int pack_a) {
    tti_cpu *cpu = tti_cpu_of(ctx);
    size_t steps = tti_panel_steps(g->dot, tti_least(g->k, deep)), tile = cpu->kernels->tile_columns;
    size_t columns = g->n < TTI_BLOCK_COLUMNS ? g->n + tile : TTI_BLOCK_COLUMNS;
    size_t of_b = pack_b ? (steps * columns + 15) / 16 * 16 : 0, of_a = pack_a ? steps * g->m : 0;
    if (tti_scratch(ctx, &cpu->shared, &cpu->shared_size, of_b + of_a + 16) != TT_OK) { return TT_ERR_MEM; }
    if (pack_b) { g->packed_b.data = tti_aligned(cpu->shared); }
    if (pack_a) { g->packed_a.data = tti_aligned(cpu->shared) + of_b; }
    return TT_OK;
}

/* All rows of A, k0 .. k1-1 of the block, if they are to be packed together. */
static tt_status tti_gemm_pack_a(tt_context *ctx, tti_gemm *g) {
    const tti_kernels *kernels = tti_kernels_of(ctx);
    size_t rows = kernels->tile_rows, k = g->block.k1 - g->block.k0;
    if (!g->packed_a.data) { return TT_OK; }
    g->packed_a.k = g->block.k0;
    g->packed_a.depth = tti_panel_steps(g->dot, k);
    g->packed_a.pairs = g->dot;
    return tti_run(ctx, kernels->pack_a, g, (g->m + rows - 1) / rows, 4 * rows * k);
}

/* The block's columns and k of B. */
static tt_status tti_gemm_pack_b(tt_context *ctx, tti_gemm *g, int pairs) {
    const tti_kernels *kernels = tti_kernels_of(ctx);
    size_t tile = kernels->tile_columns, n = g->block.n1 - g->block.n0, k = g->block.k1 - g->block.k0;
    g->packed_b.lane = g->block.n0;
    g->packed_b.k = g->block.k0;
    g->packed_b.depth = tti_panel_steps(pairs, k);
    g->packed_b.pairs = pairs;
    return tti_run(ctx, kernels->pack_b, g, (n + tile - 1) / tile, 4 * k * tile);
}

static tt_status tti_gemm_multiply(tt_context *ctx, tti_gemm *g) {
    size_t items = tti_gemm_items(ctx, g), columns = tti_least(g->block.n1 - g->block.n0, TTI_ITEM_COLUMNS);
    size_t cost = 2 * g->item_rows * columns * (g->block.k1 - g->block.k0);
    return tti_run(ctx, tti_kernels_of(ctx)->multiply_blocks, g, items, cost);
}

/* Many rows and a packed B: k in pieces, for each the columns in blocks. */
static tt_status tti_gemm_packed(tt_context *ctx, tti_gemm *g, int pack_b) {
    tti_block *x = &g->block;
    tt_status status = TT_OK;
    x->k0 = 0;
    do {
        x->k1 = x->k0 + tti_least(g->k - x->k0, TTI_DEPTH);
        TTI_TRY(tti_gemm_pack_a(ctx, g));
        for (x->n0 = 0; x->n0 < g->n; x->n0 = x->n1) {
            x->n1 = x->n0 + tti_least(g->n - x->n0, TTI_BLOCK_COLUMNS);
            if (pack_b) { TTI_TRY(tti_gemm_pack_b(ctx, g, g->dot)); }
            TTI_TRY(tti_gemm_multiply(ctx, g));
        }
        x->k0 = x->k1;
    } while (x->k0 < g->k);
done:
    return status;
}

/* Many rows: whether B is packed, for which there must be a reason; else tiles read its rows where they
 * lie. */
static int tti_gemm_packs_b(const tti_gemm *g) {
    if (g->few || g->packed_b.data) { return 0; }
    return g->b.lane_step != 1 || g->b.half || (g->b.k_step > 128 && g->m * g->n > TTI_SMALL_C)
        || tti_gemm_packs_a(g);
}

/* How the work is cut, and what is packed, shows in the time alone: each element of C goes through the same
 * additions in the same order. */
static tt_status tti_cpu_gemm(tt_context *ctx, const tt_gemm_args *args) {
    const tti_kernels *kernels = tti_kernels_of(ctx);
    size_t tile = kernels->tile_columns;
    tti_gemm g = tti_gemm_of(tti_cpu_of(ctx), args);
    int pack_a, pack_b;
    tt_status status;
    if (args->m < 0 || args->n < 0 || args->k < 0) {
        return tt_fail(ctx, TT_ERR_ARG, "gemm: m, n, k are %d, %d, %d, expected >= 0",
                       args->m, args->n, args->k);
    }
    if (args->m == 0 || args->n == 0) { return TT_OK; }
    if (args->k == 0 && args->accumulate && !args->activation) { return TT_OK; }
    g.few = g.m <= (g.b.lane_step == 1 && !g.rounds ? TTI_ITEM_ROWS / 4 : TTI_ITEM_ROWS);
    if (!g.few && g.packed_b.pairs && !g.dot) { g.packed_b.data = NULL; }   /* blocks read floats */
    pack_a = tti_gemm_packs_a(&g) && (g.few || g.rounds);
    pack_b = tti_gemm_packs_b(&g);
    TTI_TRY(tti_thread_scratch(ctx, TTI_GEMM_SCRATCH));
    TTI_TRY(tti_gemm_scratch(ctx, &g, g.few ? g.k : TTI_DEPTH, pack_b, pack_a));
    if (g.few) {
        TTI_TRY(tti_gemm_pack_a(ctx, &g));
        return tti_run(ctx, kernels->multiply_panels, &g, (g.n + tile - 1) / tile, 2 * g.m * g.k * tile);
    }
    return g.packed_b.data ? tti_gemm_packed(ctx, &g, pack_b) : tti_gemm_multiply(ctx, &g);
done:
    return status;
}

static size_t tti_cpu_gemm_panels(tt_context *ctx, const tt_gemm_args *args, void *to) {
    size_t tile = tti_kernels_of(ctx)->tile_columns;
    tti_gemm g = tti_gemm_of(tti_cpu_of(ctx), args);
    if (tti_thread_scratch(ctx, TTI_GEMM_SCRATCH) != TT_OK) { return 0; }
    if (to) {
        g.packed_b.data = tti_aligned((float *)to);
        tti_gemm_pack_b(ctx, &g, g.packed_b.pairs);
    }
    return 64 + (g.n + tile - 1) / tile * tile * g.packed_b.depth * sizeof(float);
}

/* ---- [tt:kernels.attention] attention ---- */
static tt_status tti_attention_check(tt_context *ctx, const tt_attention_args *a) {
    if (a->n_kv_heads >= 1 && a->n_heads % a->n_kv_heads == 0 && a->head_dim >= 1) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "attention: n_heads %d, n_kv_heads %d, head_dim %d, expected a multiple "
                   "and >= 1", a->n_heads, a->n_kv_heads, a->head_dim);
}

/* Rows of a full block of queries. */
static size_t tti_attention_rows(const tt_attention_args *a) {
    return tti_block_tokens(a) * (size_t)(a->n_heads / a->n_kv_heads);
}

/* Scratch: q and out of the rows, their scores against a block of keys, max and sum. */
static tt_status tti_cpu_attention_forward(tt_context *ctx, const tt_attention_args *args) {
    size_t rows, items, each;
    if (tti_attention_check(ctx, args) != TT_OK) { return TT_ERR_ARG; }
    rows = tti_attention_rows(args);
    items = tti_first_block(args, (size_t)args->n_sequences) * (size_t)args->n_kv_heads;
    each = rows * (2 * (size_t)args->head_dim + TTI_KEYS + 2);
    if (tti_thread_scratch(ctx, each + TTI_GEMM_SCRATCH) != TT_OK) { return TT_ERR_MEM; }
    return tti_run(ctx, tti_kernels_of(ctx)->attention_forward, args, items,
                   4 * rows * (size_t)args->head_dim * 32);
}

/* Scratch: q, dq, dout and out of the rows, probabilities and their gradient, lse and delta. An item is
 * a whole sequence and key-value head, as dk and dv are sums over its queries. */
static tt_status tti_cpu_attention_backward(tt_context *ctx, const tt_attention_args *args) {
    size_t items, each, average;
    if (tti_attention_check(ctx, args) != TT_OK) { return TT_ERR_ARG; }
    if (args->key_tiles || !args->lse) {
        return tt_fail(ctx, TT_ERR_ARG, "attention_backward: expected keys in rows, and lse");
    }
    items = (size_t)args->n_sequences * (size_t)args->n_kv_heads;
    each = tti_attention_rows(args) * (4 * (size_t)args->head_dim + 2 * TTI_KEYS + 2);
    if (tti_thread_scratch(ctx, each + TTI_GEMM_SCRATCH) != TT_OK) { return TT_ERR_MEM; }
    average = args->n_sequences ? (size_t)(args->n_tokens / args->n_sequences) + 1 : 1;
    return tti_run(ctx, tti_kernels_of(ctx)->attention_backward, args, items,
                   5 * average * average * (size_t)args->head_dim);
}

static int tti_cpu_key_tile(tt_context *ctx) { return (int)tti_kernels_of(ctx)->tile_columns; }

/* A cache of keys is a row of panels of B, which scores = q k' reads: channel d of head h of row r stands at
 * ((r / tile * heads + h) * head_dim + d) * tile + r % tile. */
static void tti_store_keys(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_store_keys_args *a = (const tti_store_keys_args *)args;
    size_t i, d;
    (void)scratch;
    for (i = begin; i < end; i++) {
        size_t row = (size_t)a->rows[i];
        float *to = a->cache + row / a->tile * a->width * a->tile + row % a->tile;
        for (d = 0; d < a->width; d++) { to[d * a->tile] = a->k[i * a->width + d]; }
    }
}

static tt_status tti_cpu_store_keys(tt_context *ctx, float *cache, const float *k, const int32_t *rows,
                                    int n, int heads, int head_dim) {
    size_t tile = tti_kernels_of(ctx)->tile_columns;
    tti_store_keys_args a = {tile, (size_t)heads * (size_t)head_dim, rows, k, cache};
    return tti_run(ctx, tti_store_keys, &a, (size_t)n, 32 * a.width);
}

/* ---- [tt:kernels.logprobs] log-probs of targets under softmax(x w' / temperature) ----
 * Logits exist only as a block of TTI_VOCAB_ROWS x TTI_VOCAB_BLOCK: gemm makes it, a scan folds it into each
 * row's softmax ([tt:kernels.softmax]). Backward makes the same blocks again and turns them into dz in place:
 *     dz = inv_temperature (dlogp (1[target] - p) - dH p (log p + H)),   dx += dz w,   dw += dz' x.
 * Row blocks go in order, so that dw's chains run over the rows one after the other, from what dw holds. */
typedef struct tti_logit_block {            /* the block that is worked on */
    const tt_logprobs_args *args;
    size_t row, rows, column, columns;
    float *z;
    tti_logits_args logits;
} tti_logit_block;

/* One block of logits for all threads, and before it the states of its rows; both stay with the context. */
static tt_status tti_logit_block_begin(tt_context *ctx, const tt_logprobs_args *a, tti_logit_block *h) {
    tti_cpu *cpu = tti_cpu_of(ctx);
    size_t rows = tti_least((size_t)a->n, TTI_VOCAB_ROWS);
    size_t columns = tti_least((size_t)a->vocab, TTI_VOCAB_BLOCK);
    size_t states = rows * (sizeof(tti_softmax) / sizeof(float)), size = states + rows * columns;
    if (tti_scratch(ctx, &cpu->block, &cpu->block_size, size) != TT_OK) { return TT_ERR_MEM; }
    memset(h, 0, sizeof *h);
    h->args = a;
    h->z = cpu->block + states;
    h->logits.states = (tti_softmax *)(void *)cpu->block;
    h->logits.inv_temperature = a->inv_temperature;
    return TT_OK;
}

static void tti_logit_block_rows(tti_logit_block *h) {
    h->rows = tti_least((size_t)h->args->n - h->row, TTI_VOCAB_ROWS);
    h->logits.targets = h->args->targets + h->row;
}

/* The description of z = x w' for the rows and the columns from h->column on. */
static tt_gemm_args tti_logit_block_gemm(tti_logit_block *h) {
    const tt_logprobs_args *a = h->args;
    size_t dim = (size_t)a->dim;
    tt_gemm_args g = TT_INIT;
    h->columns = tti_least((size_t)a->vocab - h->column, TTI_VOCAB_BLOCK);
    h->logits.first = h->column;
    h->logits.columns = h->logits.stride = h->columns;
    g.m = (int)h->rows;
    g.n = g.ldc = (int)h->columns;
    g.k = g.lda = g.ldb = a->dim;
    g.transpose_b = 1;
    g.a = a->x + h->row * dim;
    if (a->half_w) { g.half_b = a->half_w + h->column * dim; }
    else { g.b = a->w + h->column * dim; }
    g.c = h->z;
    return g;
}

/* A logit of no weight: finite, so that no difference of two is NaN, also when divided by a temperature. */
#define TTI_DROPPED (-1e30f)

/* The tokens of the block that a row's kept set leaves out have no weight, forwards and backwards. */
static void tti_logit_block_keep(const tti_logit_block *h) {
    const tt_kept *kept = &h->args->kept;
    size_t i, c;
    for (i = 0; kept->at && i < h->rows; i++) {
        const int32_t *id = kept->ids + kept->at[h->row + i], *end = kept->ids + kept->at[h->row + i + 1];
        float *z = h->z + i * h->columns;
        if (id == end) { continue; }
        while (id < end && (size_t)*id < h->column) { id++; }
        for (c = 0; c < h->columns; c++) {
            if (id < end && (size_t)*id == h->column + c) {
                id++;
            } else {
                z[c] = TTI_DROPPED;
            }
        }
    }
}

/* A block of rows meets the vocabulary block by block; of its logits only the state of each row's softmax
 * stays. */
static tt_status tti_cpu_logprobs_forward(tt_context *ctx, const tt_logprobs_args *a) {
    tti_kernel scan = tti_kernels_of(ctx)->logits_scan;
    tt_status status;
    tt_gemm_args g;
    tti_logit_block h;
    size_t i;
    TTI_TRY(tti_logit_block_begin(ctx, a, &h));
    h.logits.z = h.z;
    for (; h.row < (size_t)a->n; h.row += h.rows) {
        tti_logit_block_rows(&h);
        for (i = 0; i < h.rows; i++) { tti_softmax_begin(h.logits.states + i); }
        for (h.column = 0; h.column < (size_t)a->vocab; h.column += h.columns) {
            g = tti_logit_block_gemm(&h);
            TTI_TRY(tti_cpu_gemm(ctx, &g));
            tti_logit_block_keep(&h);
            TTI_TRY(tti_run(ctx, scan, &h.logits, h.rows, 16 * h.columns));
        }
        for (i = 0; i < h.rows; i++) {
            size_t row = h.row + i;
            tti_softmax_end(h.logits.states + i, a->logprobs + row, a->entropy ? a->entropy + row : NULL,
                            a->lse ? a->lse + row : NULL);
        }
    }
done:
    return status;
}

/* dx += dz w and dw += dz' x for the block, where g made its z. */
static tt_status tti_logit_block_back(tt_context *ctx, const tti_logit_block *h, tt_gemm_args g) {
    const tt_logprobs_args *a = h->args;
    size_t dim = (size_t)a->dim;
    tt_status status = TT_OK;
    g.a = h->z;
    g.lda = (int)h->columns;
    g.accumulate = 1;
    g.n = g.ldc = g.ldb = a->dim;
    g.transpose_b = 0;
    if (a->dx) {
        g.k = (int)h->columns;
        g.c = a->dx + h->row * dim;
        TTI_TRY(tti_cpu_gemm(ctx, &g));
    }
    if (a->dw) {
        g.transpose_a = 1;
        g.m = (int)h->columns;
        g.k = (int)h->rows;
        g.half_b = NULL;
        g.b = a->x + h->row * dim;
        g.c = a->dw + h->column * dim;
        TTI_TRY(tti_cpu_gemm(ctx, &g));
    }
done:
    return status;
}

/* The same blocks once more. With lse known, a block's logits become dz where they stand, and dx and dw take
 * their products with it before the next one. */
static tt_status tti_cpu_logprobs_backward(tt_context *ctx, const tt_logprobs_args *a) {
    tti_kernel back = tti_kernels_of(ctx)->logits_back;
    tt_status status;
    tt_gemm_args g;
    tti_logit_block h;
    if (a->dentropy && !a->entropy) {
        return tt_fail(ctx, TT_ERR_ARG, "logprobs_backward: dentropy without entropy");
    }
    TTI_TRY(tti_logit_block_begin(ctx, a, &h));
    h.logits.dz = h.z;
    for (; h.row < (size_t)a->n; h.row += h.rows) {
        tti_logit_block_rows(&h);
        h.logits.lse = a->lse + h.row;
        h.logits.dlogprobs = a->dlogprobs ? a->dlogprobs + h.row : NULL;
        h.logits.dentropy = a->dentropy ? a->dentropy + h.row : NULL;
        h.logits.entropy = a->entropy ? a->entropy + h.row : NULL;
        for (h.column = 0; h.column < (size_t)a->vocab; h.column += h.columns) {
            g = tti_logit_block_gemm(&h);
            TTI_TRY(tti_cpu_gemm(ctx, &g));
            tti_logit_block_keep(&h);
            TTI_TRY(tti_run(ctx, back, &h.logits, h.rows, 16 * h.columns));
            TTI_TRY(tti_logit_block_back(ctx, &h, g));
        }
    }
done:
    return status;
}

/* What logprobs_forward gives for a row whose logits (of the same gemm) are at hand, to the bit: for the
 * sampler, and to be called from any thread. */
static void tti_row_logprob(tt_context *ctx, const float *logits, int vocab, int target,
                            float inv_temperature, float *logprob, float *entropy_or_null) {
    size_t n = (size_t)vocab;
    int32_t id = (int32_t)target;
    tti_logits_args l = TT_INIT;
    tti_softmax state;
    tti_softmax_begin(&state);
    l.states = &state;
    l.targets = &id;
    l.inv_temperature = inv_temperature;
    for (l.first = 0; l.first < n; l.first += l.columns) {
        l.columns = tti_least(n - l.first, TTI_VOCAB_BLOCK);
        l.z = logits + l.first;
        tti_kernels_of(ctx)->logits_scan(&l, NULL, 0, 1);
    }
    tti_softmax_end(&state, logprob, entropy_or_null, NULL);
}

/* Replaces n values by their exponentials; to be called from any thread, too. */
static void tti_row_exp(tt_context *ctx, float *values, int n) {
    tti_unary_args a = {TT_EXP, 0.0f, 0.0f, values, NULL, values, NULL};
    tti_kernels_of(ctx)->unary(&a, NULL, 0, (size_t)n);
}

/* ---- [tt:kernels.rows] rows and columns ---- */
static tt_status tti_cpu_gather_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows,
                                     int n, int dim) {
    size_t i, width = (size_t)dim;
    (void)ctx;
    for (i = 0; i < (size_t)n; i++) {
        memcpy(y + i * width, x + (size_t)rows[i] * width, width * sizeof(float));
    }
    return TT_OK;
}

static tt_status tti_cpu_scatter_rows(tt_context *ctx, float *y, const float *x, const int32_t *rows,
                                      int n, int dim) {
    size_t i, width = (size_t)dim;
    (void)ctx;
    for (i = 0; i < (size_t)n; i++) {
        memcpy(y + (size_t)rows[i] * width, x + i * width, width * sizeof(float));
    }
    return TT_OK;
}

/* In parallel over columns, as rows may repeat. */
static tt_status tti_cpu_scatter_add_rows(tt_context *ctx, float *dx, const float *dy, const int32_t *rows,
                                          int n, int dim) {
    tti_add_rows_args a = {(size_t)n, (size_t)dim, rows, dy, dx};
    return tti_run(ctx, tti_kernels_of(ctx)->add_rows, &a, a.dim, a.n);
}

static tt_status tti_cpu_bias_backward(tt_context *ctx, float *db, const float *dy, int n, int dim) {
    return tti_cpu_scatter_add_rows(ctx, db, dy, NULL, n, dim);
}

static tt_status tti_cpu_columns(tt_context *ctx, float *y, const float *x,
                                 int n, int cols, int begin, int count) {
    size_t i, width = (size_t)count;
    (void)ctx;
    for (i = 0; i < (size_t)n; i++) {
        memcpy(y + i * width, x + i * (size_t)cols + (size_t)begin, width * sizeof(float));
    }
    return TT_OK;
}

static tt_status tti_cpu_columns_backward(tt_context *ctx, float *dx, const float *dy,
                                          int n, int cols, int begin, int count) {
    size_t i, j, width = (size_t)count;
    (void)ctx;
    for (i = 0; i < (size_t)n; i++) {
        float *to = dx + i * (size_t)cols + (size_t)begin;
        for (j = 0; j < width; j++) { to[j] += dy[i * width + j]; }
    }
    return TT_OK;
}

/* ---- [tt:kernels.norms] norms: one description for RMSNorm (mean NULL) and LayerNorm ---- */
static tt_status tti_cpu_layernorm(tt_context *ctx, float *y, float *mean, float *rstd, const float *x,
                                   const float *w, const float *b, int n, int dim, float eps) {
    tti_norm_args a = {(size_t)n, (size_t)dim, eps, x, w, b, NULL, y, mean, rstd, NULL, NULL, NULL};
    return tti_run(ctx, tti_kernels_of(ctx)->norm, &a, a.n, 8 * a.dim);
}

static tt_status tti_cpu_layernorm_backward(tt_context *ctx, float *dx, float *dw, float *db,
                                            const float *dy, const float *x, const float *w,
                                            const float *mean, const float *rstd, int n, int dim) {
    float *means = (float *)(uintptr_t)mean, *rstds = (float *)(uintptr_t)rstd;      /* are only read */
    tti_norm_args a = {(size_t)n, (size_t)dim, 0.0f, x, w, NULL, dy, NULL, means, rstds, dx, dw, db};
    tt_status status = TT_OK;
    if (dx) { TTI_TRY(tti_run(ctx, tti_kernels_of(ctx)->norm_dx, &a, a.n, 10 * a.dim)); }
    if (dw || db) { TTI_TRY(tti_run(ctx, tti_kernels_of(ctx)->norm_dw, &a, a.dim, 4 * a.n)); }
done:
    return status;
}

static tt_status tti_cpu_rmsnorm(tt_context *ctx, float *y, float *rstd, const float *x, const float *w,
                                 int n, int dim, float eps) {
    return tti_cpu_layernorm(ctx, y, NULL, rstd, x, w, NULL, n, dim, eps);
}

static tt_status tti_cpu_rmsnorm_backward(tt_context *ctx, float *dx, float *dw, const float *dy,
                                          const float *x, const float *w, const float *rstd, int n, int dim) {
    return tti_cpu_layernorm_backward(ctx, dx, dw, NULL, dy, x, w, NULL, rstd, n, dim);
}

static tt_status tti_cpu_rope(tt_context *ctx, float *y, const float *x, const float *cos_table,
                              const float *sin_table, const int32_t *positions,
                              int n, int heads, int head_dim, int inverse) {
    tti_rope_args a = {(size_t)heads, (size_t)head_dim, positions, x, cos_table, sin_table, y, inverse};
    return tti_run(ctx, tti_kernels_of(ctx)->rope, &a, (size_t)n, 4 * a.heads * a.head_dim);
}

/* ---- [tt:kernels.elementwise] elementwise ---- */
static tt_status tti_cpu_unary(tt_context *ctx, tt_unary op, float *y, const float *x, size_t n,
                               float p0, float p1) {
    tti_unary_args a = {(int)op, p0, p1, x, NULL, y, NULL};
    return tti_run(ctx, tti_kernels_of(ctx)->unary, &a, n, 8);
}

static tt_status tti_cpu_unary_backward(tt_context *ctx, tt_unary op, float *dx, const float *dy,
                                        const float *x, const float *y, size_t n, float p0, float p1) {
    tti_unary_args a = {(int)op, p0, p1, x, dy, (float *)(uintptr_t)y, dx};
    return tti_run(ctx, tti_kernels_of(ctx)->unary_back, &a, n, 8);
}

static tt_status tti_cpu_binary(tt_context *ctx, tt_binary op, float *y, const float *a, const float *b,
                                size_t n) {
    tti_binary_args args = {(int)op, a, b, NULL, y, NULL, NULL};
    return tti_run(ctx, tti_kernels_of(ctx)->binary, &args, n, 8);
}

static tt_status tti_cpu_binary_backward(tt_context *ctx, tt_binary op, float *da, float *db, const float *dy,
                                         const float *a, const float *b, size_t n) {
    tti_binary_args args = {(int)op, a, b, dy, NULL, da, db};
    return tti_run(ctx, tti_kernels_of(ctx)->binary_back, &args, n, 8);
}

static tt_status tti_cpu_where(tt_context *ctx, float *y, const float *condition, const float *a,
                               const float *b, size_t n) {
    size_t i;
    (void)ctx;
    for (i = 0; i < n; i++) { y[i] = condition[i] != 0 ? a[i] : b[i]; }
    return TT_OK;
}

static tt_status tti_cpu_where_backward(tt_context *ctx, float *da, float *db, const float *dy,
                                        const float *condition, size_t n) {
    size_t i;
    (void)ctx;
    for (i = 0; i < n; i++) {
        float *to = condition[i] != 0 ? da : db;
        if (to) { to[i] += dy[i]; }
    }
    return TT_OK;
}

static tt_status tti_cpu_axpy(tt_context *ctx, float *y, const float *x, float alpha, size_t n) {
    tti_axpy_args a = {alpha, x, y};
    return tti_run(ctx, tti_kernels_of(ctx)->axpy, &a, n, 2);
}

static tt_status tti_cpu_adamw(tt_context *ctx, const tt_adamw_args *args) {
    return tti_run(ctx, tti_kernels_of(ctx)->adamw, args, args->n, 16);
}

/* ---- [tt:kernels.shapes] broadcasting and sums ----
 * steps[i]: distance in `small` of neighbours along axis i of `big`: 0 where it broadcasts. */
static void tti_small_steps(const int *small_shape, size_t steps[4]) {
    size_t step = 1;
    int i;
    for (i = 3; i >= 0; i--) {
        steps[i] = small_shape[i] == 1 ? 0 : step;
        step *= (size_t)small_shape[i];
    }
}

/* Row r of big (its last axis) begins in small here. */
static size_t tti_small_row(size_t r, const int *big, const size_t steps[4]) {
    size_t b1 = (size_t)big[1], b2 = (size_t)big[2];
    return r / (b1 * b2) * steps[0] + r / b2 % b1 * steps[1] + r % b2 * steps[2];
}

static size_t tti_shape_rows(const int *shape) {
    return (size_t)shape[0] * (size_t)shape[1] * (size_t)shape[2];
}

static tt_status tti_cpu_broadcast(tt_context *ctx, float *y, const float *x, const int *small_shape,
                                   const int *big_shape, int accumulate) {
    size_t r, i, rows = tti_shape_rows(big_shape), width = (size_t)big_shape[3], steps[4];
    (void)ctx;
    tti_small_steps(small_shape, steps);
    for (r = 0; r < rows; r++, y += width) {
        const float *from = x + tti_small_row(r, big_shape, steps);
        for (i = 0; i < width; i++) { y[i] = accumulate ? y[i] + from[i * steps[3]] : from[i * steps[3]]; }
    }
    return TT_OK;
}

/* Sums in double, in the order of x. */
static tt_status tti_cpu_reduce(tt_context *ctx, float *y, const float *x, const int *small_shape,
                                const int *big_shape, int accumulate) {
    size_t r, i, rows = tti_shape_rows(big_shape), width = (size_t)big_shape[3], steps[4];
    size_t n = tti_shape_rows(small_shape) * (size_t)small_shape[3];
    tti_cpu *cpu = tti_cpu_of(ctx);
    double *sums;
    if (tti_scratch(ctx, &cpu->shared, &cpu->shared_size, 2 * n + 16) != TT_OK) { return TT_ERR_MEM; }
    sums = (double *)(void *)tti_aligned(cpu->shared);
    memset(sums, 0, n * sizeof *sums);
    tti_small_steps(small_shape, steps);
    for (r = 0; r < rows; r++, x += width) {
        double *to = sums + tti_small_row(r, big_shape, steps);
        for (i = 0; i < width; i++) { to[i * steps[3]] += (double)x[i]; }
    }
    for (i = 0; i < n; i++) { y[i] = (float)(accumulate ? (double)y[i] + sums[i] : sums[i]); }
    return TT_OK;
}

/* Pieces of one size, then their sums in order: neither depends on the number of threads. */
static tt_status tti_cpu_sum_squares(tt_context *ctx, const float *x, size_t n, double *out) {
    size_t items = (n + TTI_SQUARES - 1) / TTI_SQUARES, i;
    tti_cpu *cpu = tti_cpu_of(ctx);
    tti_squares_args a = {n, x, NULL};
    tt_status status;
    *out = 0;
    TTI_TRY(tti_scratch(ctx, &cpu->shared, &cpu->shared_size, 2 * items + 16));
    a.sums = (double *)(void *)tti_aligned(cpu->shared);
    TTI_TRY(tti_run(ctx, cpu->kernels->squares, &a, items, 2 * TTI_SQUARES));
    for (i = 0; i < items; i++) { *out += a.sums[i]; }
done:
    return status;
}

/* ---- [tt:kernels.cast] types, and the table of the backend ---- */
static tt_status tti_cpu_cast(tt_context *ctx, void *to, tt_dtype to_type, const void *from,
                              tt_dtype from_type, size_t n) {
    const float *in = (const float *)from;
    const uint16_t *half_in = (const uint16_t *)from;
    float *out = (float *)to;
    uint16_t *half_out = (uint16_t *)to;
    size_t i;
    if (to_type == from_type) {
        return tti_cpu_copy(ctx, to, from, n * (to_type == TT_BF16 || to_type == TT_F16 ? 2 : 4));
    }
    if (from_type == TT_F32 && to_type == TT_BF16) {
        for (i = 0; i < n; i++) { half_out[i] = tti_to_bf16(in[i]); }
    } else if (from_type == TT_F32 && to_type == TT_F16) {
        for (i = 0; i < n; i++) { half_out[i] = tti_to_f16(in[i]); }
    } else if (from_type == TT_BF16 && to_type == TT_F32) {
        for (i = 0; i < n; i++) { out[i] = tti_from_bf16(half_in[i]); }
    } else if (from_type == TT_F16 && to_type == TT_F32) {
        for (i = 0; i < n; i++) { out[i] = tti_from_f16(half_in[i]); }
    } else {
        return tt_fail(ctx, TT_ERR_ARG, "cast: from type %d to type %d, expected float to or from bf16 or "
                       "f16", (int)from_type, (int)to_type);
    }
    return TT_OK;
}

TT_API const tt_backend *tt_cpu_backend(void) {
    static const tt_backend backend = {
        "cpu", 1, NULL, tti_cpu_open, tti_cpu_close,
        tti_cpu_alloc, tti_cpu_free, tti_cpu_copy, tti_cpu_copy, tti_cpu_copy, tti_cpu_zero, tti_cpu_sync,
        tti_cpu_gemm, tti_cpu_gemm_panels, NULL,
        tti_cpu_attention_forward, tti_cpu_attention_backward, tti_cpu_key_tile, tti_cpu_store_keys, TTI_KEYS,
        tti_cpu_logprobs_forward, tti_cpu_logprobs_backward,
        tti_cpu_gather_rows, tti_cpu_scatter_add_rows, tti_cpu_scatter_rows,
        tti_cpu_columns, tti_cpu_columns_backward,
        tti_cpu_rmsnorm, tti_cpu_rmsnorm_backward,
        tti_cpu_layernorm, tti_cpu_layernorm_backward, tti_cpu_rope,
        tti_cpu_unary, tti_cpu_unary_backward, tti_cpu_binary, tti_cpu_binary_backward,
        tti_cpu_where, tti_cpu_where_backward, tti_cpu_broadcast, tti_cpu_reduce, tti_cpu_bias_backward,
        tti_cpu_axpy, tti_cpu_sum_squares, tti_cpu_adamw, tti_cpu_cast,
        NULL, NULL,       /* normal, sample: on the host */
        NULL, NULL        /* steps: nothing is launched */
    };
    return &backend;
}

/* ==== 3. tensor ============================================================================
 * A tensor is a shape over a block of backend memory. Long-lived ones are allocated one by one; those of a
 * step come from the context's two arenas: the struct from the host's, the data from the backend's. A failure
 * while tensors of a step are made sets ctx->graph_error: from then on every op gives NULL, until
 * tt_step_reset. */

/* ---- [tt:tensor.shape] shapes and sizes ---- */

/* *size: the product of the axes, 1 for a scalar. No axis is empty. */
static tt_status tti_shape_size(tt_context *ctx, const char *who, int ndim, const int *shape, size_t *size) {
    int i;
    *size = 1;
    if (ndim < 0 || ndim > TT_MAX_DIMS) {
        return tt_fail(ctx, TT_ERR_SHAPE, "%s: ndim is %d, expected 0..%d", who, ndim, TT_MAX_DIMS);
    }
    for (i = 0; i < ndim; i++) {
        if (shape[i] < 1) {
            return tt_fail(ctx, TT_ERR_SHAPE, "%s: shape[%d] is %d, expected >= 1", who, i, shape[i]);
        }
        if (!tti_mul_size(*size, (size_t)shape[i], size)) {
            return tt_fail(ctx, TT_ERR_MEM, "%s: shape overflows", who);
        }
    }
    return TT_OK;
}

static size_t tti_dtype_bytes(tt_dtype dtype) { return dtype == TT_BF16 || dtype == TT_F16 ? 2 : 4; }
static size_t tti_tensor_bytes(const tt_tensor *t) { return t->size * tti_dtype_bytes(t->dtype); }

static void tti_set_shape(tt_tensor *t, int ndim, const int *shape) {
    int i;
    t->ndim = ndim;
    for (i = 0; i < TT_MAX_DIMS; i++) { t->shape[i] = i < ndim ? shape[i] : 1; }
}

/* Rows and columns of x seen as a matrix over its last axis. */
static int tti_cols(const tt_tensor *x) { return x->ndim ? x->shape[x->ndim - 1] : 1; }
static int tti_rows(const tt_tensor *x) { return (int)(x->size / (size_t)tti_cols(x)); }

/* ---- [tt:tensor.persistent] long-lived tensors ---- */

/* One that has no data yet. */
static tt_tensor *tti_tensor_shell(tt_context *ctx, tt_dtype dtype, int ndim, const int *shape,
                                   const char *name) {
    size_t size, bytes;
    tt_tensor *t;
    if (ctx->broken != TT_OK) { return NULL; }
    if (tti_shape_size(ctx, name ? name : "tt_tensor_create", ndim, shape, &size) != TT_OK) { return NULL; }
    if (!tti_mul_size(size, tti_dtype_bytes(dtype), &bytes)) {
        tt_fail(ctx, TT_ERR_MEM, "tt_tensor_create: shape overflows");
        return NULL;
    }
    t = (tt_tensor *)tt_alloc(ctx, 1, sizeof *t);
    if (!t) { return NULL; }
    t->ctx = ctx;
    t->dtype = dtype;
    t->size = size;
    t->persistent = 1;
    tti_set_shape(t, ndim, shape);
    t->name = name ? tti_strdup(ctx, name) : NULL;
    if (!name || t->name) { return t; }
    tt_tensor_destroy(t);
    return NULL;
}

/* A shell with its data, zeroed; without data it is destroyed. */
static tt_tensor *tti_tensor_filled(tt_tensor *t, void *data) {
    t->data = data;
    if (data && t->ctx->backend->zero(t->ctx, data, tti_tensor_bytes(t)) == TT_OK) { return t; }
    tt_tensor_destroy(t);
    return NULL;
}

TT_API tt_tensor *tt_tensor_create(tt_context *ctx, tt_dtype dtype, int ndim, const int *shape,
                                   const char *name) {
    tt_tensor *t = tti_tensor_shell(ctx, dtype, ndim, shape, name);
    return t ? tti_tensor_filled(t, ctx->backend->alloc(ctx, tti_tensor_bytes(t))) : NULL;
}

TT_API tt_tensor *tt_parameter(tt_context *ctx, int ndim, const int *shape, const char *name) {
    tt_tensor *t = tt_tensor_create(ctx, TT_F32, ndim, shape, name);
    if (t) { t->requires_grad = 1; }
    return t;
}

static void tti_grad_free(tt_tensor *t) {
    if (t->grad) { t->ctx->backend->free(t->ctx, t->grad, t->size * sizeof(float)); }
    t->grad = NULL;
    t->grad_is_zero = 0;
}

TT_API void tt_tensor_destroy(tt_tensor *t) {
    if (!t || !t->persistent) { return; }
    if (t->data && !t->lent) { t->ctx->backend->free(t->ctx, t->data, tti_tensor_bytes(t)); }
    if (t->panels) { t->ctx->backend->free(t->ctx, t->panels, t->panels_bytes); }
    tti_grad_free(t);
    tti_strfree(t->ctx, t->name);
    tt_free(t->ctx, t, 1, sizeof *t);
}

/* ---- [tt:tensor.step] tensors of a step, and the graph's error ---- */

/* The graph has failed; the reason is set. */
static tt_tensor *tti_graph_broken(tt_context *ctx) {
    ctx->graph_error = 1;
    return NULL;
}

static int tti_graph_ok(tt_context *ctx, tt_status status) {
    if (status != TT_OK) { tti_graph_broken(ctx); }
    return status == TT_OK;
}

static tt_tensor *tti_graph_fail(tt_context *ctx, const char *who, const char *what, int got, int wanted) {
    tt_fail(ctx, TT_ERR_SHAPE, "%s: %s is %d, expected %d", who, what, got, wanted);
    return tti_graph_broken(ctx);
}

/* 1 if the graph is sound and no input is NULL; a NULL input without an earlier error is an error itself. */
static int tti_inputs_ok(tt_context *ctx, const char *who, tt_tensor *const *in, int n) {
    int i;
    if (ctx->graph_error) { return 0; }
    for (i = 0; i < n; i++) {
        if (in[i]) { continue; }
        tt_fail(ctx, TT_ERR_ARG, "%s: input %d is NULL", who, i);
        tti_graph_broken(ctx);
        return 0;
    }
    return 1;
}

/* A float tensor with uninitialised data. */
static tt_tensor *tti_tensor(tt_context *ctx, const char *who, int ndim, const int *shape) {
    size_t size;
    tt_tensor *t;
    if (ctx->graph_error) { return NULL; }
    if (tti_shape_size(ctx, who, ndim, shape, &size) != TT_OK) { return tti_graph_broken(ctx); }
    t = (tt_tensor *)tti_step_alloc(ctx, sizeof *t);
    if (t) { t->data = tti_arena_alloc(ctx, &ctx->device, size * sizeof(float)); }
    if (!t || !t->data) { return tti_graph_broken(ctx); }
    t->ctx = ctx;
    t->size = size;
    tti_set_shape(t, ndim, shape);
    return t;
}

TT_API tt_tensor *tt_zeros(tt_context *ctx, int ndim, const int *shape) {
    tt_tensor *t = tti_tensor(ctx, "tt_zeros", ndim, shape);
    if (!t || !tti_graph_ok(ctx, ctx->backend->zero(ctx, t->data, t->size * sizeof(float)))) { return NULL; }
    return t;
}

TT_API tt_tensor *tt_constant(tt_context *ctx, int ndim, const int *shape, const float *values) {
    tt_tensor *t = tti_tensor(ctx, "tt_constant", ndim, shape);
    if (!t || !tti_graph_ok(ctx, ctx->backend->upload(ctx, t->data, values, t->size * sizeof(float)))) {
        return NULL;
    }
    return t;
}

TT_API tt_tensor *tt_scalar(tt_context *ctx, float value) { return tt_constant(ctx, 0, NULL, &value); }

/* Host ids copied to the backend for this step. */
static const int32_t *tti_step_ids(tt_context *ctx, const int32_t *ids, int n) {
    size_t bytes = (size_t)n * sizeof(int32_t);
    void *copy = ctx->graph_error ? NULL : tti_arena_alloc(ctx, &ctx->device, bytes);
    if (!copy) {
        tti_graph_broken(ctx);
        return NULL;
    }
    return tti_graph_ok(ctx, ctx->backend->upload(ctx, copy, ids, bytes)) ? (const int32_t *)copy : NULL;
}

/* ---- [tt:tensor.values] values between backend and host ---- */

static tt_status tti_want_f32(const tt_tensor *t, const char *who) {
    if (t->dtype == TT_F32) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_ARG, "%s: tensor %s is not float32", who, t->name ? t->name : "");
}

TT_API tt_status tt_tensor_set(tt_tensor *t, const float *values) {
    if (tti_want_f32(t, "tt_tensor_set") != TT_OK) { return TT_ERR_ARG; }
    t->panels_at = 0;
    return t->ctx->backend->upload(t->ctx, t->data, values, t->size * sizeof(float));
}

/* Half precision is read into the back half of values and widened in place from the front: value i is written
 * to bytes [4 i, 4 i + 4), which end at or before the 2-byte values that are still to be read. */
TT_API tt_status tt_tensor_get(const tt_tensor *t, float *values) {
    unsigned char *half = (unsigned char *)values + 2 * t->size;
    tt_status status;
    size_t i;
    if (t->dtype == TT_F32) {
        return t->ctx->backend->download(t->ctx, values, t->data, t->size * sizeof(float));
    }
    if (t->dtype == TT_I32) { return tti_want_f32(t, "tt_tensor_get"); }
    status = t->ctx->backend->download(t->ctx, half, t->data, 2 * t->size);
    for (i = 0; i < t->size && status == TT_OK; i++) {
        uint16_t bits;
        memcpy(&bits, half + 2 * i, 2);
        values[i] = t->dtype == TT_BF16 ? tti_from_bf16(bits) : tti_from_f16(bits);
    }
    return status;
}

TT_API tt_status tt_tensor_get_grad(const tt_tensor *t, float *values) {
    if (t->grad && !t->grad_is_zero) {
        return t->ctx->backend->download(t->ctx, values, t->grad, t->size * sizeof(float));
    }
    memset(values, 0, t->size * sizeof(float));
    return TT_OK;
}

TT_API double tt_item(const tt_tensor *t) {
    float value;
    return t && t->size == 1 && tt_tensor_get(t, &value) == TT_OK ? (double)value : (double)NAN;
}

/* ==== 4. batch and cache ===================================================================
 * What runs through a model at once: tokens of several sequences, end to end. With a cache a sequence is the
 * next piece of one whose keys and values are kept; without, it begins at position 0, or goes on from a
 * sequence of the same batch. The cache has `stride` rows for each slot: row slot * stride + position, of
 * every layer. */

struct tt_kv_cache {
    tt_context *ctx;
    int n_layers, n_slots, capacity;
    int shared;                               /* positions whose rows are those of slot 0 in every slot */
    int of_step;                              /* keys and values lie in the step's arena */
    int tile, stride;                         /* from slot to slot: capacity - shared, up to a multiple of the
                                                 backend's key_tile */
    int n_heads, width;                       /* num_key_value_heads; times head_dim */
    tt_tensor **keys, **values;               /* [n_layers] of [n_slots * stride + shared, width] */
    int *lengths;                             /* [n_slots] */
};

/* ---- [tt:batch.cache] keys and values ---- */

/* Keys or values of a layer. */
static tt_tensor *tti_cache_tensor(const tt_kv_cache *cache, const int *shape) {
    tt_context *ctx = cache->ctx;
    tt_tensor *t;
    if (!cache->of_step) { return tt_tensor_create(ctx, TT_F32, 2, shape, NULL); }
    t = tti_tensor_shell(ctx, TT_F32, 2, shape, NULL);
    if (!t) { return NULL; }
    t->lent = 1;
    return tti_tensor_filled(t, tti_arena_alloc(ctx, &ctx->device, tti_tensor_bytes(t)));
}

/* Allocates keys and values of the layers whose shape the cache tells. */
static int tti_cache_fill(tt_kv_cache *cache) {
    tt_context *ctx = cache->ctx;
    int shape[2], i;
    shape[0] = cache->n_slots * cache->stride + cache->shared;
    shape[1] = cache->width;
    cache->keys = (tt_tensor **)tt_alloc(ctx, (size_t)cache->n_layers, sizeof *cache->keys);
    cache->values = (tt_tensor **)tt_alloc(ctx, (size_t)cache->n_layers, sizeof *cache->values);
    cache->lengths = (int *)tt_alloc(ctx, (size_t)cache->n_slots, sizeof *cache->lengths);
    if (!cache->keys || !cache->values || !cache->lengths) { return 0; }
    for (i = 0; i < cache->n_layers; i++) {
        cache->keys[i] = tti_cache_tensor(cache, shape);
        cache->values[i] = cache->keys[i] ? tti_cache_tensor(cache, shape) : NULL;
        if (!cache->values[i]) { return 0; }
    }
    return 1;
}

/* sizes: n_layers, n_slots, capacity, shared, of_step, n_heads and width; the rest of it is not read. */
static tt_kv_cache *tti_cache_create(tt_context *ctx, const tt_kv_cache *sizes) {
    int slots = sizes->n_slots, capacity = sizes->capacity;
    tt_kv_cache *cache;
    if (slots < 1 || capacity < 1 || slots > INT_MAX / 2 / capacity || capacity > INT_MAX / 2 / slots - 128) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_kv_cache_create: n_slots is %d and capacity %d, expected both >= 1 and the "
                "product below 2^30",
                slots, capacity);
        return NULL;
    }
    cache = (tt_kv_cache *)tt_alloc(ctx, 1, sizeof *cache);
    if (!cache) { return NULL; }
    *cache = *sizes;
    cache->ctx = ctx;
    cache->tile = ctx->backend->store_keys ? ctx->backend->key_tile(ctx) : 1;
    cache->stride = (capacity + cache->tile - 1) / cache->tile * cache->tile - cache->shared;
    if (tti_cache_fill(cache)) { return cache; }
    tt_kv_cache_destroy(cache);
    return NULL;
}

TT_API void tt_kv_cache_destroy(tt_kv_cache *cache) {
    int i;
    if (!cache) { return; }
    for (i = 0; i < cache->n_layers; i++) {
        if (cache->keys) { tt_tensor_destroy(cache->keys[i]); }
        if (cache->values) { tt_tensor_destroy(cache->values[i]); }
    }
    tt_free(cache->ctx, cache->keys, (size_t)cache->n_layers, sizeof *cache->keys);
    tt_free(cache->ctx, cache->values, (size_t)cache->n_layers, sizeof *cache->values);
    tt_free(cache->ctx, cache->lengths, (size_t)cache->n_slots, sizeof *cache->lengths);
    tt_free(cache->ctx, cache, 1, sizeof *cache);
}

static int tti_cache_has(const tt_kv_cache *cache, int slot) { return slot >= 0 && slot < cache->n_slots; }

TT_API int tt_kv_cache_length(const tt_kv_cache *cache, int slot) {
    return tti_cache_has(cache, slot) ? cache->lengths[slot] : 0;
}

/* What is cut off stays in its rows until it is overwritten: nothing reads beyond a slot's length. */
TT_API void tt_kv_cache_truncate(tt_kv_cache *cache, int slot, int length) {
    if (tti_cache_has(cache, slot) && length >= 0 && length < cache->lengths[slot]) {
        cache->lengths[slot] = length;
    }
}

/* The backend may store keys in tiles of several rows, so whole tiles are copied, behind the shared rows. */
TT_API tt_status tt_kv_cache_share(tt_kv_cache *cache, int from_slot, int to_slot, int length) {
    tt_context *ctx = cache->ctx;
    size_t width = (size_t)cache->width, shared = (size_t)cache->shared * width;
    size_t from = (size_t)from_slot * (size_t)cache->stride * width + shared;
    size_t to = (size_t)to_slot * (size_t)cache->stride * width + shared;
    int rows = (length + cache->tile - 1) / cache->tile * cache->tile - cache->shared, i;
    if (!tti_cache_has(cache, from_slot) || !tti_cache_has(cache, to_slot)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_kv_cache_share: slots are %d and %d, expected 0..%d", from_slot,
                       to_slot, cache->n_slots - 1);
    }
    if (length < 0 || length > cache->lengths[from_slot]) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_kv_cache_share: length is %d, expected 0..%d", length,
                       cache->lengths[from_slot]);
    }
    for (i = 0; from_slot != to_slot && rows > 0 && i < cache->n_layers; i++) {
        float *k = TT_F(cache->keys[i]), *v = TT_F(cache->values[i]);
        size_t bytes = (size_t)rows * width * sizeof(float);
        tt_status status = ctx->backend->copy(ctx, k + to, k + from, bytes);
        if (status == TT_OK) { status = ctx->backend->copy(ctx, v + to, v + from, bytes); }
        if (status != TT_OK) { return status; }
    }
    cache->lengths[to_slot] = length;
    return TT_OK;
}

/* The batch's new keys and values [n_tokens, width] of a layer go to their rows; *keys and *values are then
 * what attention reads: the whole cache. */
static tt_status tti_cache_write(const tt_batch *batch, int layer, const tt_tensor *k, const tt_tensor *v,
                                 const float **keys, const float **values) {
    tt_kv_cache *cache = batch->cache;
    tt_context *ctx = cache->ctx;
    int n = batch->n_tokens, width = (int)(k->size / (size_t)n);
    float *to_k, *to_v;
    tt_status status;
    if (layer < 0 || layer >= cache->n_layers || width != cache->width) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_attention: layer %d of width %d does not fit the cache (%d layers of "
                       "width %d)",
                       layer, width, cache->n_layers, cache->width);
    }
    to_k = TT_F(cache->keys[layer]);
    to_v = TT_F(cache->values[layer]);
    if (ctx->backend->store_keys) {
        status = ctx->backend->store_keys(ctx, to_k, TT_F(k), batch->d_cache_rows, n, cache->n_heads,
                                          width / cache->n_heads);
    } else {
        status = ctx->backend->scatter_rows(ctx, to_k, TT_F(k), batch->d_cache_rows, n, width);
    }
    if (status == TT_OK) {
        status = ctx->backend->scatter_rows(ctx, to_v, TT_F(v), batch->d_cache_rows, n, width);
    }
    *keys = to_k;
    *values = to_v;
    return status;
}

/* After all layers: the batch's tokens belong to the cache. */
static tt_status tti_cache_advance(const tt_batch *batch) {
    int s;
    for (s = 0; s < batch->n_sequences; s++) {
        batch->cache->lengths[batch->cache_slots[s]] += batch->offsets[s + 1] - batch->offsets[s];
    }
    return TT_OK;
}

/* ---- [tt:batch.batch] sequences end to end ---- */

/* The arrays of a batch while they are filled. */
typedef struct tti_batch_arrays {
    int32_t *offsets, *query_start, *key_start;                               /* by sequence */
    int32_t *tokens, *positions, *target_rows, *targets, *cache_rows;         /* by token    */
} tti_batch_arrays;

/* Two blocks of the step hold the arrays; offsets and tokens are copied, so the caller's may go. */
static int tti_batch_alloc(tt_context *ctx, const tt_batch_desc *desc, tti_batch_arrays *a) {
    size_t sequences = (size_t)desc->n_sequences, n = (size_t)desc->offsets[desc->n_sequences];
    a->offsets = (int32_t *)tti_step_alloc(ctx, sizeof(int32_t) * (sequences * 3 + 1));
    a->tokens = (int32_t *)tti_step_alloc(ctx, sizeof(int32_t) * n * 5);
    if (!a->offsets || !a->tokens) { return 0; }
    a->query_start = a->offsets + sequences + 1;
    a->key_start = a->query_start + sequences;
    a->positions = a->tokens + n;
    a->target_rows = a->positions + n;
    a->targets = a->target_rows + n;
    a->cache_rows = a->targets + n;
    memcpy(a->offsets, desc->offsets, sizeof(int32_t) * (sequences + 1));
    memcpy(a->tokens, desc->tokens, sizeof(int32_t) * n);
    return 1;
}

/* Where sequence s goes on in its slot of the cache. */
static int tti_batch_place(tt_context *ctx, const tt_batch_desc *desc, int s, tti_batch_arrays *a) {
    const tt_kv_cache *cache = desc->cache;
    int length = desc->offsets[s + 1] - desc->offsets[s], slot;
    if (!cache) { return 1; }
    slot = desc->cache_slots[s];
    if (!tti_cache_has(cache, slot)) {
        tti_graph_fail(ctx, "tt_batch_create", "slot", slot, cache->n_slots - 1);
        return 0;
    }
    a->query_start[s] = cache->lengths[slot];
    a->key_start[s] = slot * cache->stride;
    if (a->query_start[s] + length <= cache->capacity) { return 1; }
    tti_graph_fail(ctx, "tt_batch_create", "length of a sequence with its cache", a->query_start[s] + length,
                   cache->capacity);
    return 0;
}

/* Sequences form trees: s goes on at the position where its parent ends. Its keys are a row of tokens of its
 * own, begun at key_start[s], so that blocks of keys fall as they would in a sequence that stands alone. */
static int tti_batch_parent(tt_context *ctx, const tt_batch_desc *desc, int s, tt_batch *b,
                            tti_batch_arrays *a) {
    int length = desc->offsets[s + 1] - desc->offsets[s], parent;
    if (!desc->parents) { return 1; }
    parent = desc->parents[s];
    if (parent < -1 || parent >= s || desc->cache) {
        const char *what = desc->cache ? "parents with a cache" : "parent";
        tti_graph_fail(ctx, "tt_batch_create", what, parent, s - 1);
        return 0;
    }
    if (parent >= 0) {
        a->query_start[s] = a->query_start[parent] + a->offsets[parent + 1] - a->offsets[parent];
    }
    a->key_start[s] = b->n_keys;
    if (a->query_start[s] > INT_MAX / 2 - length || b->n_keys > INT_MAX / 2 - a->query_start[s] - length) {
        tti_graph_fail(ctx, "tt_batch_create", "number of keys", b->n_keys, INT_MAX / 2);
        return 0;
    }
    b->n_keys += a->query_start[s] + length;
    return 1;
}

/* Which tokens the keys of each sequence are: those of its parent, then its own. */
static const int32_t *tti_batch_keys(tt_context *ctx, const tt_batch_desc *desc, const tt_batch *b,
                                     const tti_batch_arrays *a) {
    int32_t *rows = (int32_t *)tti_step_alloc(ctx, sizeof(int32_t) * (size_t)b->n_keys);
    int s, t;
    if (!rows) {
        tti_graph_broken(ctx);
        return NULL;
    }
    for (s = 0; s < desc->n_sequences; s++) {
        int32_t *to = rows + a->key_start[s];
        if (desc->parents[s] >= 0) {
            memcpy(to, rows + a->key_start[desc->parents[s]], sizeof(int32_t) * (size_t)a->query_start[s]);
        }
        for (t = a->offsets[s]; t < a->offsets[s + 1]; t++) { to[a->positions[t]] = t; }
    }
    return rows;
}

/* Positions of sequence s, and which of its tokens are targets: never the first, which nothing predicts. */
static void tti_batch_sequence(tt_batch *b, const tt_batch_desc *desc, int s, tti_batch_arrays *a) {
    int begin = a->offsets[s], end = a->offsets[s + 1], t;
    if (end - begin > b->max_length) { b->max_length = end - begin; }
    for (t = begin; t < end; t++) {
        a->positions[t] = a->query_start[s] + t - begin;
        a->cache_rows[t] = a->key_start[s] + a->positions[t];
        if (t == begin || (desc->mask && !desc->mask[t])) { continue; }
        a->target_rows[b->n_targets] = t - 1;
        a->targets[b->n_targets++] = a->tokens[t];
    }
}

/* Every sequence has at least one token. */
static int tti_offsets_ok(tt_context *ctx, const tt_batch_desc *desc) {
    int s;
    if (desc->n_sequences < 1) {
        tti_graph_fail(ctx, "tt_batch_create", "n_sequences", desc->n_sequences, 1);
        return 0;
    }
    for (s = 0; s < desc->n_sequences; s++) {
        if (desc->offsets[0] == 0 && desc->offsets[s + 1] > desc->offsets[s]) { continue; }
        tt_fail(ctx, TT_ERR_ARG, "tt_batch_create: offsets[%d] is %d after %d, expected growing from 0",
                s + 1, (int)desc->offsets[s + 1], (int)desc->offsets[s]);
        tti_graph_broken(ctx);
        return 0;
    }
    return 1;
}

/* The arrays stand on the host, and once more on the backend where kernels read them (on the CPU equal
 * pointers would do, but a copy keeps one rule for both). */
TT_API tt_batch *tt_batch_create(tt_context *ctx, const tt_batch_desc *desc) {
    tti_batch_arrays a;
    tt_batch *b;
    int s, n;
    if (ctx->graph_error || !tti_offsets_ok(ctx, desc)) { return NULL; }
    b = (tt_batch *)tti_step_alloc(ctx, sizeof *b);
    if (!b || !tti_batch_alloc(ctx, desc, &a)) {
        tti_graph_broken(ctx);
        return NULL;
    }
    for (s = 0; s < desc->n_sequences; s++) {
        if (!tti_batch_place(ctx, desc, s, &a) || !tti_batch_parent(ctx, desc, s, b, &a)) { return NULL; }
        tti_batch_sequence(b, desc, s, &a);
    }
    n = a.offsets[desc->n_sequences];
    b->ctx = ctx;
    b->n_sequences = desc->n_sequences;
    b->n_tokens = n;
    b->offsets = a.offsets;
    b->tokens = a.tokens;
    b->positions = a.positions;
    b->target_rows = a.target_rows;
    b->targets = a.targets;
    b->cache = desc->cache;
    b->cache_slots = desc->cache_slots;
    b->d_offsets = tti_step_ids(ctx, a.offsets, desc->n_sequences + 1);
    b->d_positions = tti_step_ids(ctx, a.positions, n);
    if (desc->parents) { b->key_rows = tti_batch_keys(ctx, desc, b, &a); }
    if (desc->cache || desc->parents) {
        b->d_query_start = tti_step_ids(ctx, a.query_start, desc->n_sequences);
        b->d_key_start = tti_step_ids(ctx, a.key_start, desc->n_sequences);
    }
    if (desc->cache) {
        b->d_cache_rows = tti_step_ids(ctx, a.cache_rows, n);
    }
    return ctx->graph_error ? NULL : b;
}

/* ==== 5. autograd ==========================================================================
 * A node remembers one op: what went in, what came out, what backward needs. Nodes form the tape, newest
 * first; because an op can only use what exists, walking the list is a walk in reverse topological order.
 *
 * Each op stands here as a pair: backward, which reads node->out->grad and adds to the gradients of
 * node->in, and below it the public forward, which computes and records. tti_op_begin and tti_record do what
 * all share. A gradient buffer of an inner tensor lives from its first use to its node's backward and is then
 * handed on to the next tensor of the same size, so backward needs memory for one layer's gradients. */

#define TTI_MAX_INPUTS 4

typedef struct tti_node tti_node;
typedef tt_status (*tti_backward_fn)(tt_context *ctx, tti_node *node);
struct tti_node {
    tti_node *next;                /* recorded before this one                */
    const char *name;
    tti_backward_fn backward;
    tt_tensor **in;
    int n_in;
    tt_tensor *out, *out2;         /* out2: second result (entropy), or NULL  */
    void *saved;                   /* of the op: sizes, flags, statistics     */
};

/* A buffer of backward that waits for the next use of its size. */
typedef struct tti_spare { struct tti_spare *next; float *data; size_t size; } tti_spare;

/* ---- [tt:autograd.tape] recording ---- */

/* What an op begins with: *out is its result, uninitialised; gives zeroed bytes for backward to keep, or
 * NULL. */
static void *tti_op_begin(tt_context *ctx, const char *who, int ndim, const int *shape, size_t bytes,
                          tt_tensor **out) {
    void *saved = ctx->graph_error ? NULL : tti_step_alloc(ctx, bytes);
    *out = saved ? tti_tensor(ctx, who, ndim, shape) : tti_graph_broken(ctx);
    return *out ? saved : NULL;
}

static int tti_any_grad(tt_tensor *const *in, int n) {
    int i;
    for (i = 0; i < n; i++) {
        if (in[i] && in[i]->requires_grad) { return 1; }
    }
    return 0;
}

/* What an op ends with: records a node whose outputs are made by node->out and
 * out2, if a gradient can flow. */
static tt_tensor *tti_record2(tt_context *ctx, const tti_node *op, tt_tensor *const *in) {
    tti_node *node;
    if (ctx->graph_error) { return NULL; }
    if (ctx->no_grad || !tti_any_grad(in, op->n_in)) { return op->out; }
    node = (tti_node *)tti_step_alloc(ctx, sizeof *node);
    if (!node) { return tti_graph_broken(ctx); }
    *node = *op;
    node->in = (tt_tensor **)tti_step_alloc(ctx, (size_t)op->n_in * sizeof *node->in);
    if (!node->in) { return tti_graph_broken(ctx); }
    memcpy(node->in, in, (size_t)op->n_in * sizeof *in);
    node->out->requires_grad = 1;
    node->out->node = node;
    if (node->out2) {
        node->out2->requires_grad = 1;
        node->out2->node = node;
    }
    node->next = ctx->tape;
    ctx->tape = node;
    return node->out;
}

/* The same for an op of one result; gives it back. */
static tt_tensor *tti_record(tt_tensor *out, const char *name, tti_backward_fn backward, tt_tensor *const *in,
                             int n_in, void *saved) {
    tti_node op;
    memset(&op, 0, sizeof op);
    op.name = name;
    op.backward = backward;
    op.n_in = n_in;
    op.out = out;
    op.saved = saved;
    return tti_record2(out->ctx, &op, in);
}

TT_API tt_status tt_eval(tt_context *ctx) { return ctx->graph_error ? ctx->status : tti_mended(ctx); }
TT_API void tt_no_grad_begin(tt_context *ctx) { ctx->no_grad++; }
TT_API void tt_no_grad_end(tt_context *ctx) { ctx->no_grad -= ctx->no_grad > 0; }

/* The arenas keep their memory for the next step; parameters and their gradients do not live there. */
TT_API void tt_step_reset(tt_context *ctx) {
    ctx->tape = NULL;
    ctx->spare_grads = NULL;
    ctx->graph_error = 1;     /* keeps what tt_error says: if memory is out here, the next step asks again
                                 and reports */
    tti_arena_reset(ctx, &ctx->host);
    tti_arena_reset(ctx, &ctx->device);
    ctx->graph_error = ctx->broken != TT_OK;
}

/* ---- [tt:autograd.backward] gradients ---- */

/* Memory of backward: a spare, or the arena's. */
static float *tti_spare_take(tt_context *ctx, size_t size) {
    tti_spare **link = (tti_spare **)&ctx->spare_grads;
    float *data;
    while (*link && (*link)->size != size) { link = &(*link)->next; }
    if (!*link) { return (float *)tti_arena_alloc(ctx, &ctx->device, size * sizeof(float)); }
    data = (*link)->data;
    *link = (*link)->next;
    return data;
}

/* Nobody reads it any more. */
static void tti_spare_give(tt_context *ctx, float *data, size_t size) {
    tti_spare *spare = (tti_spare *)tti_step_alloc(ctx, sizeof *spare);
    if (!spare) {
        tti_graph_broken(ctx);
        return;
    }
    spare->data = data;
    spare->size = size;
    spare->next = ctx->spare_grads;
    ctx->spare_grads = spare;
}

/* Memory for the gradient of a tensor that has none: its own for a parameter. */
static float *tti_grad_memory(tt_tensor *t) {
    if (t->persistent) { return (float *)t->ctx->backend->alloc(t->ctx, t->size * sizeof(float)); }
    return tti_spare_take(t->ctx, t->size);
}

/* The gradient to add to, NULL if none is wanted. A new one, or one that tt_zero_grad declared zero, is
 * zeroed; but if `fresh` is given, *fresh = 1 tells the caller to overwrite it instead. */
static float *tti_grad(tt_tensor *t, int *fresh) {
    tt_context *ctx;
    if (fresh) { *fresh = 0; }
    if (!t || !t->requires_grad) { return NULL; }
    if (t->grad && !t->grad_is_zero) { return t->grad; }
    ctx = t->ctx;
    if (!t->grad_is_zero) { t->grad = tti_grad_memory(t); }
    t->grad_is_zero = 0;
    if (fresh) { *fresh = t->grad != NULL; }
    if (!t->grad || (!fresh && ctx->backend->zero(ctx, t->grad, t->size * sizeof(float)) != TT_OK)) {
        t->grad = NULL;
        tti_graph_broken(ctx);
    }
    return t->grad;
}

TT_API float *tt_grad(tt_tensor *t) { return tti_grad(t, NULL); }

/* Nobody reads the gradient of this inner tensor any more. */
static void tti_grad_done(tt_context *ctx, tt_tensor *t) {
    if (!t || !t->grad || t->retain_grad || t->persistent) { return; }
    tti_spare_give(ctx, t->grad, t->size);
    t->grad = NULL;
}

/* Runs the whole tape. A node whose outputs got no gradient is skipped. */
static tt_status tti_run_backward(tt_context *ctx) {
    while (ctx->tape && !ctx->graph_error) {
        tti_node *node = ctx->tape;
        ctx->tape = node->next;
        if (!node->out->grad && !(node->out2 && node->out2->grad)) { continue; }
        tti_graph_ok(ctx, node->backward(ctx, node));
        tti_grad_done(ctx, node->out);
        tti_grad_done(ctx, node->out2);
    }
    return ctx->graph_error ? ctx->status : TT_OK;
}

TT_API tt_status tt_backward(tt_context *ctx, tt_tensor *loss) {
    static const float one = 1.0f;
    if (!tti_inputs_ok(ctx, "tt_backward", &loss, 1)) { return ctx->status; }
    if (loss->size != 1) {
        tti_graph_fail(ctx, "tt_backward", "number of loss values", (int)loss->size, 1);
        return ctx->status;
    }
    if (!loss->requires_grad) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_backward: the loss depends on nothing that requires a gradient, or its tape was used");
        tti_graph_broken(ctx);
        return ctx->status;
    }
    if (!tt_grad(loss) || !tti_graph_ok(ctx, ctx->backend->upload(ctx, loss->grad, &one, sizeof one))) {
        return ctx->status;
    }
    loss->requires_grad = loss->node == NULL;
    tti_run_backward(ctx);
    return tt_eval(ctx);
}

/* Of a parameter it is only declared: the next product that writes the gradient overwrites it without
 * reading. */
TT_API tt_status tt_zero_grad(tt_tensor *t) {
    if (!t->persistent) {
        return t->grad ? t->ctx->backend->zero(t->ctx, t->grad, t->size * sizeof(float)) : TT_OK;
    }
    t->grad_is_zero = t->grad != NULL;
    return TT_OK;
}

/* ---- [tt:autograd.shapes] broadcast and reduce: each is the other's backward ---- */

typedef struct tti_shapes { int small_shape[4], big_shape[4]; } tti_shapes;

/* Right-aligned to four dimensions, as the kernels want them. */
static void tti_align_shape(const tt_tensor *t, int out[4]) {
    int i;
    for (i = 0; i < 4; i++) { out[i] = i < 4 - t->ndim ? 1 : t->shape[i - (4 - t->ndim)]; }
}

/* y[i] = x[i mod shape].   dx = sum of dy over the repeated entries. */
static tt_status tti_broadcast_back(tt_context *ctx, tti_node *node) {
    tti_shapes *s = (tti_shapes *)node->saved;
    float *dx = tt_grad(node->in[0]);
    return dx ? ctx->backend->reduce(ctx, dx, node->out->grad, s->small_shape, s->big_shape, 1) : TT_OK;
}

static tt_tensor *tti_broadcast_to(tt_context *ctx, tt_tensor *x, int ndim, const int *shape) {
    tt_tensor *y;
    tti_shapes *s = (tti_shapes *)tti_op_begin(ctx, "broadcast", ndim, shape, sizeof *s, &y);
    if (!s) { return NULL; }
    tti_align_shape(x, s->small_shape);
    tti_align_shape(y, s->big_shape);
    if (!tti_graph_ok(ctx, ctx->backend->broadcast(ctx, TT_F(y), TT_F(x), s->small_shape, s->big_shape, 0))) {
        return NULL;
    }
    return tti_record(y, "broadcast", tti_broadcast_back, &x, 1, s);
}

/* y = sum of x.   dx = dy, repeated. */
static tt_status tti_reduce_back(tt_context *ctx, tti_node *node) {
    tti_shapes *s = (tti_shapes *)node->saved;
    float *dx = tt_grad(node->in[0]);
    return dx ? ctx->backend->broadcast(ctx, dx, node->out->grad, s->small_shape, s->big_shape, 1) : TT_OK;
}

static tt_tensor *tti_reduce_to(tt_context *ctx, tt_tensor *x, int ndim, const int *shape) {
    tt_tensor *y;
    tti_shapes *s = (tti_shapes *)tti_op_begin(ctx, "sum", ndim, shape, sizeof *s, &y);
    if (!s) { return NULL; }
    tti_align_shape(y, s->small_shape);
    tti_align_shape(x, s->big_shape);
    if (!tti_graph_ok(ctx, ctx->backend->reduce(ctx, TT_F(y), TT_F(x), s->small_shape, s->big_shape, 0))) {
        return NULL;
    }
    return tti_record(y, "sum", tti_reduce_back, &x, 1, s);
}

/* NumPy's rule. Gives the common shape of a and b, or an error that shows both. */
static int tti_common_shape(const char *who, const tt_tensor *a, const tt_tensor *b, int *ndim,
                            int shape[4]) {
    int as[4], bs[4], full[4], i;
    tti_align_shape(a, as);
    tti_align_shape(b, bs);
    *ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
    for (i = 0; i < 4; i++) {
        full[i] = as[i] > bs[i] ? as[i] : bs[i];
        if ((as[i] == full[i] || as[i] == 1) && (bs[i] == full[i] || bs[i] == 1)) { continue; }
        tt_fail(a->ctx, TT_ERR_SHAPE, "%s: shapes [%d,%d,%d,%d] and [%d,%d,%d,%d] do not broadcast", who,
                as[0], as[1], as[2], as[3], bs[0], bs[1], bs[2], bs[3]);
        tti_graph_broken(a->ctx);
        return 0;
    }
    for (i = 0; i < *ndim; i++) { shape[i] = full[4 - *ndim + i]; }
    return 1;
}

/* x itself, or x broadcast to the shape. */
static tt_tensor *tti_fit(tt_context *ctx, tt_tensor *x, int ndim, const int *shape) {
    int i, same = x->ndim == ndim;
    for (i = 0; same && i < ndim; i++) { same = x->shape[i] == shape[i]; }
    return same ? x : tti_broadcast_to(ctx, x, ndim, shape);
}

TT_API tt_tensor *tt_sum(tt_context *ctx, tt_tensor *x) {
    return tti_inputs_ok(ctx, "tt_sum", &x, 1) ? tti_reduce_to(ctx, x, 0, NULL) : NULL;
}

/* Means are sums times a constant: one op less to differentiate. */
TT_API tt_tensor *tt_mean(tt_context *ctx, tt_tensor *x) {
    tt_tensor *sum = tt_sum(ctx, x);
    return sum ? tt_scale(ctx, sum, 1.0f / (float)x->size) : NULL;
}

TT_API tt_tensor *tt_sum_axis(tt_context *ctx, tt_tensor *x, int axis) {
    int shape[TT_MAX_DIMS];
    if (!tti_inputs_ok(ctx, "tt_sum_axis", &x, 1)) { return NULL; }
    if (axis < 0) { axis += x->ndim; }
    if (axis < 0 || axis >= x->ndim) { return tti_graph_fail(ctx, "tt_sum_axis", "axis", axis, x->ndim - 1); }
    memcpy(shape, x->shape, sizeof shape);
    shape[axis] = 1;
    return tti_reduce_to(ctx, x, x->ndim, shape);
}

TT_API tt_tensor *tt_mean_axis(tt_context *ctx, tt_tensor *x, int axis) {
    tt_tensor *sum = tt_sum_axis(ctx, x, axis);
    return sum ? tt_scale(ctx, sum, (float)sum->size / (float)x->size) : NULL;
}

/* ---- [tt:autograd.views] views, columns, rows ---- */

/* y is x under another shape.   dx += dy. */
static tt_status tti_view_back(tt_context *ctx, tti_node *node) {
    float *dx = tt_grad(node->in[0]);
    return dx ? ctx->backend->axpy(ctx, dx, node->out->grad, 1.0f, node->out->size) : TT_OK;
}

TT_API tt_tensor *tt_view(tt_context *ctx, tt_tensor *x, int ndim, const int *shape) {
    size_t size;
    tt_tensor *y;
    if (!tti_inputs_ok(ctx, "tt_view", &x, 1)) { return NULL; }
    if (!tti_graph_ok(ctx, tti_shape_size(ctx, "tt_view", ndim, shape, &size))) { return NULL; }
    if (size != x->size) {
        return tti_graph_fail(ctx, "tt_view", "number of elements", (int)size, (int)x->size);
    }
    y = (tt_tensor *)tti_step_alloc(ctx, sizeof *y);
    if (!y) { return tti_graph_broken(ctx); }
    y->ctx = ctx;
    y->size = size;
    y->data = x->data;
    tti_set_shape(y, ndim, shape);
    return tti_record(y, "view", tti_view_back, &x, 1, NULL);
}

TT_API tt_tensor *tt_detach(tt_context *ctx, tt_tensor *x) {
    tt_tensor *y;
    ctx->no_grad++;
    y = x ? tt_view(ctx, x, x->ndim, x->shape) : NULL;
    ctx->no_grad--;
    return y;
}

typedef struct tti_range { int begin, count; } tti_range;

/* y = x[:, begin : begin + count].   dx[:, begin : begin + count] += dy. */
static tt_status tti_columns_back(tt_context *ctx, tti_node *node) {
    tti_range *r = (tti_range *)node->saved;
    tt_tensor *x = node->in[0];
    float *dx = tt_grad(x);
    if (!dx) { return TT_OK; }
    return ctx->backend->slice_backward(ctx, dx, node->out->grad, tti_rows(x), tti_cols(x), r->begin,
                                        r->count);
}

TT_API tt_tensor *tt_columns(tt_context *ctx, tt_tensor *x, int begin, int count) {
    int shape[2];
    tti_range *r;
    tt_tensor *y;
    if (!tti_inputs_ok(ctx, "tt_columns", &x, 1)) { return NULL; }
    if (begin < 0 || count < 1 || count > tti_cols(x) || begin > tti_cols(x) - count) {
        tt_fail(ctx, TT_ERR_SHAPE, "tt_columns: begin %d and count %d, expected within %d columns", begin,
                count, tti_cols(x));
        return tti_graph_broken(ctx);
    }
    shape[0] = tti_rows(x);
    shape[1] = count;
    r = (tti_range *)tti_op_begin(ctx, "tt_columns", 2, shape, sizeof *r, &y);
    if (!r) { return NULL; }
    r->begin = begin;
    r->count = count;
    if (!tti_graph_ok(ctx, ctx->backend->slice(ctx, TT_F(y), TT_F(x), shape[0], tti_cols(x), begin, count))) {
        return NULL;
    }
    return tti_record(y, "columns", tti_columns_back, &x, 1, r);
}

/* y[i] = x[rows[i]].   dx[rows[i]] += dy[i].   Embedding is the same with a table of weights as x. */
static tt_status tti_gather_back(tt_context *ctx, tti_node *node) {
    float *dx = tt_grad(node->in[0]);
    const int32_t *rows = (const int32_t *)node->saved;
    const tt_tensor *y = node->out;
    return dx ? ctx->backend->scatter_add_rows(ctx, dx, y->grad, rows, y->shape[0], y->shape[1]) : TT_OK;
}

/* The rows themselves, of a table of any precision. ids: the same on the backend. */
static tt_status tti_gather_from(tt_tensor *y, const tt_tensor *x, const int32_t *ids,
                                 const int32_t *host_ids) {
    tt_context *ctx = y->ctx;
    size_t dim = (size_t)tti_cols(x);
    tt_status status = TT_OK;
    int n = y->shape[0], i;
    if (x->dtype == TT_F32) { return ctx->backend->gather_rows(ctx, TT_F(y), TT_F(x), ids, n, (int)dim); }
    for (i = 0; i < n && status == TT_OK; i++) {
        const uint16_t *row = (const uint16_t *)x->data + (size_t)host_ids[i] * dim;
        status = ctx->backend->cast(ctx, TT_F(y) + (size_t)i * dim, TT_F32, row, x->dtype, dim);
    }
    return status;
}

/* Host ids are checked here, once, so that no kernel reads outside the table. */
static tt_tensor *tti_gather(tt_context *ctx, const char *who, tt_tensor *x, const int32_t *rows, int n) {
    int shape[2], i;
    const int32_t *ids;
    tt_tensor *y;
    if (!tti_inputs_ok(ctx, who, &x, 1)) { return NULL; }
    for (i = 0; i < n; i++) {
        if (rows[i] >= 0 && rows[i] < tti_rows(x)) { continue; }
        tt_fail(ctx, TT_ERR_ARG, "%s: id %d at index %d, expected 0..%d", who, (int)rows[i], i,
                tti_rows(x) - 1);
        return tti_graph_broken(ctx);
    }
    shape[0] = n;
    shape[1] = tti_cols(x);
    y = tti_tensor(ctx, who, 2, shape);
    ids = y ? tti_step_ids(ctx, rows, n) : NULL;
    if (!ids || !tti_graph_ok(ctx, tti_gather_from(y, x, ids, rows))) { return NULL; }
    return tti_record(y, who, tti_gather_back, &x, 1, (void *)(uintptr_t)ids);
}

TT_API tt_tensor *tt_gather_rows(tt_context *ctx, tt_tensor *x, const int32_t *rows, int n) {
    return tti_gather(ctx, "tt_gather_rows", x, rows, n);
}

TT_API tt_tensor *tt_embedding(tt_context *ctx, tt_tensor *w, const int32_t *ids, int n) {
    return tti_gather(ctx, "tt_embedding", w, ids, n);
}

/* ---- [tt:autograd.elementary] one pair for all unary ops, one for all binary ones ----
 * The formulas are the kernels'. */

/* p0, p1: bounds of clamp, factor of scale. */
typedef struct tti_unary_op { tt_unary op; float p0, p1; } tti_unary_op;

/* y = op(x).   dx += dy op'(x); the kernel takes y too, since exp and tanh have their slope from it. */
static tt_status tti_unary_back(tt_context *ctx, tti_node *node) {
    tti_unary_op *u = (tti_unary_op *)node->saved;
    tt_tensor *x = node->in[0], *y = node->out;
    float *dx = tt_grad(x);
    return dx ? ctx->backend->unary_backward(ctx, u->op, dx, y->grad, TT_F(x), TT_F(y), x->size, u->p0, u->p1)
              : TT_OK;
}

static tt_tensor *tti_unary(tt_context *ctx, const char *name, tt_unary op, tt_tensor *x, float p0,
                            float p1) {
    tti_unary_op *u;
    tt_tensor *y;
    if (!tti_inputs_ok(ctx, name, &x, 1)) { return NULL; }
    u = (tti_unary_op *)tti_op_begin(ctx, name, x->ndim, x->shape, sizeof *u, &y);
    if (!u) { return NULL; }
    u->op = op;
    u->p0 = p0;
    u->p1 = p1;
    if (!tti_graph_ok(ctx, ctx->backend->unary(ctx, op, TT_F(y), TT_F(x), x->size, p0, p1))) { return NULL; }
    return tti_record(y, name, tti_unary_back, &x, 1, u);
}

#define TTI_UNARY(name, op) \
    TT_API tt_tensor *name(tt_context *ctx, tt_tensor *x) { return tti_unary(ctx, #name, op, x, 0, 0); }
TTI_UNARY(tt_neg, TT_NEG)
TTI_UNARY(tt_exp, TT_EXP)
TTI_UNARY(tt_log, TT_LOG)
TTI_UNARY(tt_tanh, TT_TANH)
#undef TTI_UNARY

TT_API tt_tensor *tt_clamp(tt_context *ctx, tt_tensor *x, float low, float high) {
    return tti_unary(ctx, "tt_clamp", TT_CLAMP, x, low, high);
}

TT_API tt_tensor *tt_scale(tt_context *ctx, tt_tensor *x, float factor) {
    return tti_unary(ctx, "tt_scale", TT_SCALE, x, factor, 0);
}

TT_API tt_tensor *tt_gelu(tt_context *ctx, tt_tensor *x, int tanh_form) {
    return tti_unary(ctx, "tt_gelu", tanh_form ? TT_GELU_TANH : TT_GELU_ERF, x, 0, 0);
}

/* Of a sum the gradient passes as it is: where a has none yet, y's buffer becomes a's. */
static tt_status tti_add_back(tt_context *ctx, tt_tensor *a, tt_tensor *b, tt_tensor *y) {
    float *db;
    int fresh;
    a->grad = y->grad;
    y->grad = NULL;
    db = tti_grad(b, &fresh);
    if (!db) { return ctx->graph_error ? ctx->status : TT_OK; }
    if (fresh) { return ctx->backend->copy(ctx, db, a->grad, a->size * sizeof(float)); }
    return ctx->backend->axpy(ctx, db, a->grad, 1, a->size);
}

/* y = op(a, b) of equal shapes.   da += dy d op/da,  db += dy d op/db. */
static tt_status tti_binary_back(tt_context *ctx, tti_node *node) {
    tt_binary op = *(tt_binary *)node->saved;
    tt_tensor *a = node->in[0], *b = node->in[1], *y = node->out;
    float *da, *db;
    if (op == TT_ADD && a->requires_grad && !a->persistent && !a->grad && !y->retain_grad) {
        return tti_add_back(ctx, a, b, y);
    }
    da = tt_grad(a);
    db = tt_grad(b);
    return ctx->backend->binary_backward(ctx, op, da, db, y->grad, TT_F(a), TT_F(b), a->size);
}

/* Inputs of other shapes are broadcast first, as ops of their own, so that the kernel sees equal shapes. */
static tt_tensor *tti_binary(tt_context *ctx, const char *name, tt_binary op, tt_tensor *a, tt_tensor *b) {
    tt_tensor *in[2], *y;
    tt_binary *saved;
    int ndim, shape[TT_MAX_DIMS];
    in[0] = a;
    in[1] = b;
    if (!tti_inputs_ok(ctx, name, in, 2) || !tti_common_shape(name, a, b, &ndim, shape)) { return NULL; }
    in[0] = tti_fit(ctx, a, ndim, shape);
    in[1] = in[0] ? tti_fit(ctx, b, ndim, shape) : NULL;
    if (!in[1]) { return NULL; }
    saved = (tt_binary *)tti_op_begin(ctx, name, ndim, shape, sizeof *saved, &y);
    if (!saved) { return NULL; }
    *saved = op;
    if (!tti_graph_ok(ctx, ctx->backend->binary(ctx, op, TT_F(y), TT_F(in[0]), TT_F(in[1]), y->size))) {
        return NULL;
    }
    return op == TT_LESS ? y : tti_record(y, name, tti_binary_back, in, 2, saved);
}

#define TTI_BINARY(name, op)                                              \
    TT_API tt_tensor *name(tt_context *ctx, tt_tensor *a, tt_tensor *b) { \
        return tti_binary(ctx, #name, op, a, b);                          \
    }
TTI_BINARY(tt_add, TT_ADD)
TTI_BINARY(tt_sub, TT_SUB)
TTI_BINARY(tt_mul, TT_MUL)
TTI_BINARY(tt_div, TT_DIV)
TTI_BINARY(tt_minimum, TT_MINIMUM)
TTI_BINARY(tt_maximum, TT_MAXIMUM)
TTI_BINARY(tt_less, TT_LESS)
TTI_BINARY(tt_swiglu, TT_SWIGLU)
#undef TTI_BINARY

/* y = condition ? a : b.   da += dy where condition, db += dy elsewhere; the condition has no gradient. */
static tt_status tti_where_back(tt_context *ctx, tti_node *node) {
    float *da = tt_grad(node->in[1]), *db = tt_grad(node->in[2]);
    return ctx->backend->where_backward(ctx, da, db, node->out->grad, TT_F(node->in[0]), node->out->size);
}

TT_API tt_tensor *tt_where(tt_context *ctx, tt_tensor *condition, tt_tensor *a, tt_tensor *b) {
    tt_tensor *in[3], *y, shaped;
    int ndim, shape[TT_MAX_DIMS], i;
    in[0] = condition;
    in[1] = a;
    in[2] = b;
    if (!tti_inputs_ok(ctx, "tt_where", in, 3) || !tti_common_shape("tt_where", a, b, &ndim, shape)) {
        return NULL;
    }
    tti_set_shape(&shaped, ndim, shape);
    if (!tti_common_shape("tt_where", condition, &shaped, &ndim, shape)) { return NULL; }
    for (i = 0; i < 3; i++) {
        in[i] = tti_fit(ctx, in[i], ndim, shape);
        if (!in[i]) { return NULL; }
    }
    y = tti_tensor(ctx, "tt_where", ndim, shape);
    if (!y) { return NULL; }
    if (!tti_graph_ok(ctx,
                      ctx->backend->where(ctx, TT_F(y), TT_F(in[0]), TT_F(in[1]), TT_F(in[2]), y->size))) {
        return NULL;
    }
    return tti_record(y, "where", tti_where_back, in, 3, NULL);
}

/* ---- [tt:autograd.product] matrix product ----
 * y = x w^T + b (linear) or x w + b (matmul).   dx += dy w (dy w^T),  dw += dy^T x (x^T dy),  db += column
 * sums of dy. An activation that follows is made in the same pass, and is an op of
 * its own on the way back. */

/* A factor of a product: a matrix with the stride of its rows, to be read as it is stored or turned. */
typedef struct tti_view { const float *data; int stride, transpose; } tti_view;

/* In C++11 a struct in an expression needs a function. */
static tti_view tti_view_of(const float *data, int stride, int transpose) {
    tti_view f;
    f.data = data;
    f.stride = stride;
    f.transpose = transpose;
    return f;
}

/* c[m,n] = a[m,k] b[k,n]. */
static tt_gemm_args tti_gemm_args_of(int m, int n, int k, tti_view a, tti_view b, float *c) {
    tt_gemm_args g;
    memset(&g, 0, sizeof g);
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = a.data;
    g.lda = a.stride;
    g.transpose_a = a.transpose;
    g.b = b.data;
    g.ldb = b.stride;
    g.transpose_b = b.transpose;
    g.c = c;
    g.ldc = n;
    return g;
}

/* Rows [at, at + n) of the weight of g, widened to float: some of c's columns, or a piece of the sum. */
static tt_gemm_args tti_gemm_block(const tt_gemm_args *g, int at, int n, int last, const float *wide) {
    tt_gemm_args block = *g;
    block.b = wide;
    if (g->transpose_b) {
        block.n = n;
        block.c = g->c + at;
        block.y = g->y ? g->y + at : NULL;
        block.bias = g->bias ? g->bias + at : NULL;
    } else {
        block.k = n;
        block.a = g->a + at;
        block.packed_a = NULL;      /* that is all of A */
        block.accumulate = g->accumulate || at > 0;
        block.activation = last ? g->activation : (tt_unary)0;
    }
    return block;
}

/* g with a weight in half precision that the backend does not take as it is: widened in blocks of rows that
 * stay in the CPU's cache. A piece of the sum is a multiple of 32 rows unless it is the last, so the bits are
 * those of a float32 weight. */
#define TTI_WIDEN ((size_t)1 << 18)
static tt_status tti_gemm_widened(tt_context *ctx, const tt_gemm_args *g, const tt_tensor *w) {
    size_t cols = (size_t)w->shape[1];
    int rows = w->shape[0], step = TTI_WIDEN / cols > 32 ? (int)(TTI_WIDEN / cols / 32 * 32) : 32, at;
    tti_mark mark = tti_arena_mark(&ctx->device);
    tt_status status = TT_OK;
    float *wide;
    if (step > rows) { step = rows; }
    wide = (float *)tti_arena_alloc(ctx, &ctx->device, (size_t)step * cols * sizeof(float));
    if (!wide) { return TT_ERR_MEM; }
    for (at = 0; at < rows && status == TT_OK; at += step) {
        int n = rows - at < step ? rows - at : step;
        const uint16_t *half = (const uint16_t *)w->data + (size_t)at * cols;
        tt_gemm_args block = tti_gemm_block(g, at, n, at + n == rows, wide);
        status = ctx->backend->cast(ctx, wide, TT_F32, half, w->dtype, (size_t)n * cols);
        if (status == TT_OK) { status = ctx->backend->gemm(ctx, &block); }
    }
    tti_arena_release(&ctx->device, mark);
    return status;
}

/* A factor as all its products read it, see pack of the backend, or NULL. It lives as long as its tensor and
 * is made anew where it may not be what data is: of a step's tensor, when memory of the arena was given back;
 * of a long-lived one, when data was written, or a step of decoding lost that may have been to make it. */
static const void *tti_packed(tt_tensor *t) {
    tt_context *ctx = t->ctx;
    const tt_backend *backend = ctx->backend;
    const size_t now = t->persistent ? SIZE_MAX - ctx->steps_lost : 1 + ctx->device.given_back;
    const int packs = backend->pack && t->dtype == TT_F32, rows = tti_rows(t), cols = tti_cols(t);
    size_t bytes = packs ? backend->pack(ctx, rows, cols, NULL, NULL) : 0;
    if (bytes == 0) { return NULL; }
    if (t->panels && t->panels_at == now) { return t->panels; }
    if (!t->persistent) {
        t->panels = tti_arena_alloc(ctx, &ctx->device, bytes);
    } else if (!t->panels) {
        t->panels = backend->alloc(ctx, bytes);
        t->panels_bytes = bytes;
    }
    if (!t->panels) { return tti_graph_broken(ctx); }
    backend->pack(ctx, rows, cols, TT_F(t), t->panels);
    t->panels_at = now;
    return t->panels;
}

/* g with the weight as b, whatever its precision, and with its panels, if there are some. */
static tt_status tti_gemm_weight(tt_context *ctx, tt_gemm_args g, tt_tensor *w) {
    g.b = TT_F(w);
    if (ctx->backend->pack) { g.panels = tti_packed(w); }
    else if (g.transpose_b == w->panels_transposed) { g.panels = w->panels; }
    if (w->dtype == TT_F32) { return ctx->backend->gemm(ctx, &g); }
    if (w->dtype != TT_BF16 || !ctx->backend->takes_half) { return tti_gemm_widened(ctx, &g, w); }
    g.half_b = (const uint16_t *)w->data;
    return ctx->backend->gemm(ctx, &g);
}

/* The gradients of x and w from that of their product. w_is_mk: w is stored [m,k] (linear), else [k,m]. */
static tt_status tti_factors_back(tt_context *ctx, int w_is_mk, tt_tensor *x, tt_tensor *w, const float *dy) {
    int n = tti_rows(x), k = tti_cols(x), m = w->shape[w_is_mk ? 0 : 1], fresh_x, fresh_w;
    float *dx = tti_grad(x, &fresh_x), *dw = tti_grad(w, &fresh_w), *packed = NULL;
    size_t size = dx && dw && ctx->backend->pack ? ctx->backend->pack(ctx, n, m, NULL, NULL) / sizeof *dx : 0;
    tt_status status = TT_OK;
    /* dy, for both products; its copy's memory serves the next one of that size. */
    if (size > 0) {
        packed = tti_spare_take(ctx, size);
        if (!packed) { return TT_ERR_MEM; }
        ctx->backend->pack(ctx, n, m, dy, packed);
    }
    if (dx) {
        tti_view weight = tti_view_of(NULL, w_is_mk ? k : m, !w_is_mk);
        tt_gemm_args g = tti_gemm_args_of(n, k, m, tti_view_of(dy, m, 0), weight, dx);
        g.accumulate = !fresh_x;
        g.packed_a = packed;
        status = tti_gemm_weight(ctx, g, w);
    }
    if (dw && status == TT_OK) {
        tt_gemm_args g =
            w_is_mk ? tti_gemm_args_of(m, k, n, tti_view_of(dy, m, 1), tti_view_of(TT_F(x), k, 0), dw)
                    : tti_gemm_args_of(k, m, n, tti_view_of(TT_F(x), k, 1), tti_view_of(dy, m, 0), dw);
        g.accumulate = !fresh_w;
        g.packed_a = w_is_mk ? packed : tti_packed(x);
        g.panels = w_is_mk ? tti_packed(x) : packed;
        status = ctx->backend->gemm(ctx, &g);
    }
    if (packed) { tti_spare_give(ctx, packed, size); }
    return status;
}

/* The bias last: db = column sums of dy. */
static tt_status tti_product_back(tt_context *ctx, tti_node *node) {
    tt_tensor *x = node->in[0], *b = node->n_in > 2 ? node->in[2] : NULL, *y = node->out;
    float *db = tt_grad(b);
    tt_status status = tti_factors_back(ctx, *(int *)node->saved, x, node->in[1], y->grad);
    if (db && status == TT_OK) {
        status = ctx->backend->bias_backward(ctx, db, y->grad, tti_rows(x), tti_cols(y));
    }
    return status;
}

/* A product before it is made: its kind, its inputs (bias last, may be NULL), and what follows it (0 =
 * nothing). */
typedef struct tti_product_desc {
    const char *who;
    int w_is_mk;
    tt_tensor *in[3];
    tt_unary activation;
} tti_product_desc;

/* Shapes: x [.., k], w [m,k] or [k,m], bias [m]. */
static int tti_product_ok(tt_context *ctx, const tti_product_desc *p) {
    const tt_tensor *x = p->in[0], *w = p->in[1], *bias = p->in[2];
    int k, inner, m;
    if (!tti_inputs_ok(ctx, p->who, p->in, 2)) { return 0; }
    k = tti_cols(x);
    inner = w->shape[p->w_is_mk ? 1 : 0];
    m = w->shape[p->w_is_mk ? 0 : 1];
    if (w->ndim != 2) {
        tti_graph_fail(ctx, p->who, "dimensions of the weight", w->ndim, 2);
    } else if (inner != k) {
        tti_graph_fail(ctx, p->who, "inner size of the weight", inner, k);
    } else if (bias && (int)bias->size != m) {
        tti_graph_fail(ctx, p->who, "size of the bias", (int)bias->size, m);
    } else if (x->ndim == 0) {
        tti_graph_fail(ctx, p->who, "dimensions of x", 0, 2);
    }
    return !ctx->graph_error;
}

/* An activation makes two nodes of one product: the kernel writes y and op(y), and both are kept for
 * backward. */
static tt_tensor *tti_product(tt_context *ctx, const tti_product_desc *p) {
    tt_tensor *x = p->in[0], *w = p->in[1], *bias = p->in[2], *y, *active = NULL;
    tti_unary_op *u = NULL;
    int shape[TT_MAX_DIMS], k, m, *saved;
    tt_gemm_args g;
    if (!tti_product_ok(ctx, p)) { return NULL; }
    k = tti_cols(x);
    m = w->shape[p->w_is_mk ? 0 : 1];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = m;
    saved = (int *)tti_op_begin(ctx, p->who, x->ndim, shape, sizeof *saved, &y);
    if (!saved) { return NULL; }
    *saved = p->w_is_mk;
    g = tti_gemm_args_of(tti_rows(x), m, k, tti_view_of(TT_F(x), k, 0),
                    tti_view_of(NULL, p->w_is_mk ? k : m, p->w_is_mk), TT_F(y));
    g.packed_a = tti_packed(x);
    g.bias = bias ? TT_F(bias) : NULL;
    g.activation = p->activation;
    if (p->activation) {
        u = (tti_unary_op *)tti_op_begin(ctx, p->who, y->ndim, y->shape, sizeof *u, &active);
        if (!u) { return NULL; }
        u->op = p->activation;
        g.y = TT_F(active);
    }
    if (!tti_graph_ok(ctx, tti_gemm_weight(ctx, g, w))) { return NULL; }
    y = tti_record(y, p->who, tti_product_back, p->in, bias ? 3 : 2, saved);
    return y && active ? tti_record(active, "activation", tti_unary_back, &y, 1, u) : y;
}

/* y = x w^T + b or x w + b. */
static tt_tensor *tti_product_of(tt_context *ctx, tt_tensor *x, tt_tensor *w, tt_tensor *bias, int w_is_mk,
                                 tt_unary activation) {
    tti_product_desc p;
    p.who = w_is_mk ? "tt_linear" : "tt_matmul";
    p.w_is_mk = w_is_mk;
    p.in[0] = x;
    p.in[1] = w;
    p.in[2] = bias;
    p.activation = activation;
    return tti_product(ctx, &p);
}

TT_API tt_tensor *tt_linear(tt_context *ctx, tt_tensor *x, tt_tensor *w, tt_tensor *bias) {
    return tti_product_of(ctx, x, w, bias, 1, (tt_unary)0);
}

TT_API tt_tensor *tt_matmul(tt_context *ctx, tt_tensor *x, tt_tensor *w, tt_tensor *bias) {
    return tti_product_of(ctx, x, w, bias, 0, (tt_unary)0);
}

/* y + x w^T in the place of y, which must be the result of a product that nothing else reads: its own
 * backward asks for no values of y. The gradient of the sum is that of y, so its buffer is handed on. */
static tt_status tti_product_add_back(tt_context *ctx, tti_node *node) {
    tt_tensor *y = node->in[0], *sum = node->out;
    tt_status status = tti_factors_back(ctx, 1, node->in[1], node->in[2], sum->grad);
    if (y->requires_grad) {
        y->grad = sum->grad;
        sum->grad = NULL;
    }
    return status;
}

/* sum = y + x w in the memory of y, which nobody but the adapter that calls this has seen. */
static tt_tensor *tti_product_add(tt_context *ctx, tt_tensor *y, tt_tensor *x, tt_tensor *w) {
    static const char *const who = "tti_product_add";
    tt_tensor *in[3], *sum;
    tt_gemm_args g;
    int k;
    in[0] = y;
    in[1] = x;
    in[2] = w;
    if (!tti_inputs_ok(ctx, who, in, 3)) { return NULL; }
    sum = (tt_tensor *)tti_step_alloc(ctx, sizeof *sum);
    if (!sum) { return tti_graph_broken(ctx); }
    *sum = *y;
    sum->panels = NULL;
    sum->node = NULL;
    sum->requires_grad = 0;
    k = tti_cols(x);
    g = tti_gemm_args_of(tti_rows(x), tti_cols(y), k, tti_view_of(TT_F(x), k, 0), tti_view_of(NULL, k, 1),
                         TT_F(y));
    g.packed_a = tti_packed(x);
    g.accumulate = 1;
    if (!tti_graph_ok(ctx, tti_gemm_weight(ctx, g, w))) { return NULL; }
    return tti_record(sum, who, tti_product_add_back, in, 3, NULL);
}

/* ---- [tt:autograd.norm] normalisation ----
 * rmsnorm: y = w x r, r = 1 / sqrt(mean x^2 + eps).   layernorm: y = w (x - mean) r + b. Statistics are kept
 * per row. Source: Zhang and Sennrich 2019, arXiv 1910.07467; Ba et al. 2016, arXiv 1607.06450. */

typedef struct tti_norm_stats { float *mean, *rstd; } tti_norm_stats;   /* mean NULL: rmsnorm */

/* With n = (x - mean) r and g = dy w:  dx += r (g - mean(g) - n mean(g n)),  dw += dy n,  db += dy;
 * RMSNorm has no mean to take off. */
static tt_status tti_norm_back(tt_context *ctx, tti_node *node) {
    tti_norm_stats *s = (tti_norm_stats *)node->saved;
    tt_tensor *x = node->in[0], *w = node->in[1];
    float *dx = tt_grad(x), *dw = tt_grad(w), *db = s->mean ? tt_grad(node->in[2]) : NULL;
    const float *dy = node->out->grad;
    int n = tti_rows(x), dim = tti_cols(x);
    if (!s->mean) {
        return ctx->backend->rmsnorm_backward(ctx, dx, dw, dy, TT_F(x), TT_F(w), s->rstd, n, dim);
    }
    return ctx->backend->layernorm_backward(ctx, dx, dw, db, dy, TT_F(x), TT_F(w), s->mean, s->rstd, n, dim);
}

/* b NULL and n_in 2: rmsnorm. */
static tt_tensor *tti_normalise(tt_context *ctx, const char *who, tt_tensor *const *in, int n_in, float eps) {
    tt_tensor *x = in[0], *w = in[1], *b = n_in > 2 ? in[2] : NULL, *y;
    tti_norm_stats *s;
    size_t bytes;
    int n, dim;
    tt_status status;
    if (!tti_inputs_ok(ctx, who, in, n_in)) { return NULL; }
    n = tti_rows(x);
    dim = tti_cols(x);
    if (w->size != (size_t)dim) { return tti_graph_fail(ctx, who, "size of the weight", (int)w->size, dim); }
    if (b && b->size != w->size) {
        return tti_graph_fail(ctx, who, "size of the bias", (int)b->size, (int)w->size);
    }
    s = (tti_norm_stats *)tti_op_begin(ctx, who, x->ndim, x->shape, sizeof *s, &y);
    if (!s) { return NULL; }
    bytes = (size_t)n * sizeof(float);
    s->rstd = (float *)tti_arena_alloc(ctx, &ctx->device, bytes);
    if (b) { s->mean = (float *)tti_arena_alloc(ctx, &ctx->device, bytes); }
    if (!s->rstd || (b && !s->mean)) { return tti_graph_broken(ctx); }
    if (b) {
        status =
            ctx->backend->layernorm(ctx, TT_F(y), s->mean, s->rstd, TT_F(x), TT_F(w), TT_F(b), n, dim, eps);
    } else {
        status = ctx->backend->rmsnorm(ctx, TT_F(y), s->rstd, TT_F(x), TT_F(w), n, dim, eps);
    }
    return tti_graph_ok(ctx, status) ? tti_record(y, who, tti_norm_back, in, n_in, s) : NULL;
}

TT_API tt_tensor *tt_rmsnorm(tt_context *ctx, tt_tensor *x, tt_tensor *w, float eps) {
    tt_tensor *in[2];
    in[0] = x;
    in[1] = w;
    return tti_normalise(ctx, "tt_rmsnorm", in, 2, eps);
}

TT_API tt_tensor *tt_layernorm(tt_context *ctx, tt_tensor *x, tt_tensor *w, tt_tensor *b, float eps) {
    tt_tensor *in[3];
    in[0] = x;
    in[1] = w;
    in[2] = b;
    return tti_normalise(ctx, "tt_layernorm", in, 3, eps);
}

/* ---- [tt:autograd.rope] rotary embedding: a rotation by the position's angles; its backward turns the other
 * way ---- Source: Su et al. 2021, arXiv 2104.09864, sec. 3.2. */

typedef struct tti_rope {
    tt_tensor *cos_table, *sin_table;
    const int32_t *positions;
    int head_dim;
} tti_rope;

/* Pairs (x[i], x[i + head_dim/2]) turn by position * angle[i]. */
static tt_status tti_rope_turn(tt_context *ctx, const tti_rope *r, const tt_tensor *x, float *out,
                               const float *in, int back) {
    return ctx->backend->rope(ctx, out, in, TT_F(r->cos_table), TT_F(r->sin_table), r->positions, tti_rows(x),
                              tti_cols(x) / r->head_dim, r->head_dim, back);
}

/* dx += dy, turned back. */
static tt_status tti_rope_back(tt_context *ctx, tti_node *node) {
    tt_tensor *x = node->in[0];
    float *dx = tt_grad(x);
    return dx ? tti_rope_turn(ctx, (const tti_rope *)node->saved, x, dx, node->out->grad, 1) : TT_OK;
}

TT_API tt_tensor *tt_rope(tt_context *ctx, tt_tensor *x, tt_tensor *cos_table, tt_tensor *sin_table,
                          const tt_batch *batch, int head_dim) {
    tti_rope *r;
    tt_tensor *y;
    int last, i;
    if (!tti_inputs_ok(ctx, "tt_rope", &x, 1) || !batch) { return NULL; }
    if (head_dim < 2 || head_dim % 2 || tti_cols(x) % head_dim) {
        return tti_graph_fail(ctx, "tt_rope", "head_dim", head_dim, tti_cols(x));
    }
    if (tti_rows(x) != batch->n_tokens) {
        return tti_graph_fail(ctx, "tt_rope", "rows of x", tti_rows(x), batch->n_tokens);
    }
    last = cos_table->shape[0] - 1;
    for (i = 0; i < batch->n_tokens; i++) {
        if (batch->positions[i] <= last) { continue; }
        return tti_graph_fail(ctx, "tt_rope", "position (max_position_embeddings too small)",
                              batch->positions[i], last);
    }
    r = (tti_rope *)tti_op_begin(ctx, "tt_rope", x->ndim, x->shape, sizeof *r, &y);
    if (!r) { return NULL; }
    r->cos_table = cos_table;
    r->sin_table = sin_table;
    r->positions = batch->d_positions;
    r->head_dim = head_dim;
    if (!tti_graph_ok(ctx, tti_rope_turn(ctx, r, x, TT_F(y), TT_F(x), 0))) { return NULL; }
    return tti_record(y, "rope", tti_rope_back, &x, 1, r);
}

/* ---- [tt:autograd.attention] attention ----
 * With a cache in the batch the new keys and values are first written to their rows of the cache, and the
 * same kernel then reads the cache instead of k and v: one code for training, prefill and decode. Of a batch
 * with parents each sequence gets the keys and values of all that it sees, side by side; what is shared is
 * all else, the products above all, and the gradients of a shared token add up. */

/* Probabilities are made again from q, k and the row's log-sum-exp, block by block. Source: FlashAttention-2,
 * arXiv 2307.08691. */
static tt_status tti_attention_back(tt_context *ctx, tti_node *node) {
    tt_attention_args *a = (tt_attention_args *)node->saved;
    a->dout = node->out->grad;
    a->dq = tt_grad(node->in[0]);
    a->dk = tt_grad(node->in[1]);
    a->dv = tt_grad(node->in[2]);
    return ctx->backend->attention_backward(ctx, a);
}

/* Shapes: q [N, heads * head_dim], k and v [N, kv_heads * head_dim], N tokens of the batch. */
static int tti_attention_ok(tt_context *ctx, tt_tensor *const *in, const tt_batch *batch,
                            const tt_attention_desc *desc) {
    static const char *const who = "tt_attention";
    const tt_tensor *q = in[0], *k = in[1], *v = in[2];
    int q_width = desc->n_heads * desc->head_dim, k_width = desc->n_kv_heads * desc->head_dim;
    if (!tti_inputs_ok(ctx, who, in, 3) || !batch) { return 0; }
    if (desc->n_kv_heads < 1 || desc->n_heads % desc->n_kv_heads) {
        tti_graph_fail(ctx, who, "n_kv_heads (a divisor of n_heads)", desc->n_kv_heads, desc->n_heads);
    } else if (tti_cols(q) != q_width) {
        tti_graph_fail(ctx, who, "width of q", tti_cols(q), q_width);
    } else if (tti_cols(k) != k_width) {
        tti_graph_fail(ctx, who, "width of k", tti_cols(k), k_width);
    } else if (v->size != k->size || tti_cols(v) != tti_cols(k)) {
        tti_graph_fail(ctx, who, "size of v", (int)v->size, (int)k->size);
    } else if (tti_rows(q) != batch->n_tokens || tti_rows(k) != batch->n_tokens) {
        tti_graph_fail(ctx, who, "rows of q and k", tti_rows(q), batch->n_tokens);
    }
    return !ctx->graph_error;
}

TT_API tt_tensor *tt_attention(tt_context *ctx, tt_tensor *q, tt_tensor *k, tt_tensor *v,
                               const tt_batch *batch, const tt_attention_desc *desc) {
    tt_tensor *in[3], *y;
    tt_attention_args *a;
    in[0] = q;
    in[1] = k;
    in[2] = v;
    if (!tti_attention_ok(ctx, in, batch, desc)) { return NULL; }
    if (batch->key_rows) {
        in[1] = k = tt_gather_rows(ctx, k, batch->key_rows, batch->n_keys);
        in[2] = v = tt_gather_rows(ctx, v, batch->key_rows, batch->n_keys);
        if (!k || !v) { return NULL; }
    }
    a = (tt_attention_args *)tti_op_begin(ctx, "tt_attention", q->ndim, q->shape, sizeof *a, &y);
    if (!a) { return NULL; }
    a->n_sequences = batch->n_sequences;
    a->n_tokens = batch->n_tokens;
    a->n_heads = desc->n_heads;
    a->n_kv_heads = desc->n_kv_heads;
    a->head_dim = desc->head_dim;
    a->scale = desc->scale != 0 ? desc->scale : (float)(1.0 / sqrt((double)desc->head_dim));
    a->offsets = batch->d_offsets;
    a->host_offsets = batch->offsets;
    a->q = TT_F(q);
    a->k = TT_F(k);
    a->v = TT_F(v);
    a->out = TT_F(y);
    a->query_start = batch->d_query_start;
    a->key_start = batch->d_key_start;
    if (batch->cache) {
        a->key_tiles = ctx->backend->store_keys != NULL;
        a->shared_keys = batch->cache->shared;
        if (!tti_graph_ok(ctx, tti_cache_write(batch, desc->layer, k, v, &a->k, &a->v))) { return NULL; }
    } else if (!ctx->no_grad) {
        size_t rows = (size_t)batch->n_tokens * (size_t)desc->n_heads;
        a->lse = (float *)tti_arena_alloc(ctx, &ctx->device, rows * sizeof(float));
        if (!a->lse) { return tti_graph_broken(ctx); }
    }
    if (!tti_graph_ok(ctx, ctx->backend->attention_forward(ctx, a))) { return NULL; }
    return batch->cache ? y : tti_record(y, "tt_attention", tti_attention_back, in, 3, a);
}

/* ---- [tt:autograd.logprobs] token log-probs ---- */

/* With p = softmax(z), z = x w^T / T, target t:  d logp/dz = e_t - p,  dH/dz = -p (log p + H). */
static tt_status tti_logprobs_back(tt_context *ctx, tti_node *node) {
    tt_logprobs_args *a = (tt_logprobs_args *)node->saved;
    a->dlogprobs = node->out->grad;
    a->dentropy = node->out2 ? node->out2->grad : NULL;
    a->packed_x = tti_packed(node->in[0]);
    a->packed_w = tti_packed(node->in[1]);
    a->dx = tt_grad(node->in[0]);
    a->dw = tt_grad(node->in[1]);
    return ctx->backend->logprobs_backward(ctx, a);
}

/* Divided by less, logits that are finite might not stay so. */
#define TTI_TEMPERATURES "1e-30 or more"
static int tti_is_temperature(float t) { return t >= 1e-30f && t <= FLT_MAX; }

/* Targets are ids of the vocabulary, one for each row. */
static int tti_logprobs_ok(tt_context *ctx, tt_tensor *const *in, const int32_t *targets, float temperature) {
    static const char *const who = "tt_token_logprobs";
    const tt_tensor *x = in[0], *w = in[1];
    int vocab, i;
    if (!tti_inputs_ok(ctx, who, in, 2)) { return 0; }
    vocab = tti_rows(w);
    if (tti_cols(w) != tti_cols(x)) {
        tti_graph_fail(ctx, who, "width of the head", tti_cols(w), tti_cols(x));
    } else if (!tti_is_temperature(temperature)) {
        tt_fail(ctx, TT_ERR_ARG, "%s: temperature is %g, expected " TTI_TEMPERATURES, who,
                (double)temperature);
        tti_graph_broken(ctx);
    }
    for (i = 0; i < tti_rows(x) && !ctx->graph_error; i++) {
        if (targets[i] >= 0 && targets[i] < vocab) { continue; }
        tti_graph_fail(ctx, who, "target (vocabulary too small)", (int)targets[i], vocab - 1);
    }
    return !ctx->graph_error;
}

/* in: x, w. kept NULL: all tokens. */
static tt_tensor *tti_token_logprobs(tt_context *ctx, tt_tensor *const *in, const int32_t *targets,
                                     const tt_kept *kept, float temperature, tt_tensor **entropy_out) {
    static const char *const who = "tt_token_logprobs";
    tt_tensor *x = in[0], *w = in[1];
    tt_logprobs_args *a;
    tti_node op;
    int n;
    if (entropy_out) { *entropy_out = NULL; }
    if (!tti_logprobs_ok(ctx, in, targets, temperature)) { return NULL; }
    n = tti_rows(x);
    memset(&op, 0, sizeof op);
    a = (tt_logprobs_args *)tti_op_begin(ctx, who, 1, &n, sizeof *a, &op.out);
    if (a && entropy_out) { op.out2 = tti_tensor(ctx, who, 1, &n); }
    if (!a || (entropy_out && !op.out2)) { return NULL; }
    a->n = n;
    a->dim = tti_cols(x);
    a->vocab = tti_rows(w);
    a->inv_temperature = 1.0f / temperature;
    a->x = TT_F(x);
    if (w->dtype == TT_BF16) {
        a->half_w = (const uint16_t *)w->data;
    } else {
        a->w = TT_F(w);
    }
    a->lse = (float *)tti_arena_alloc(ctx, &ctx->device, (size_t)n * sizeof(float));
    if (!a->lse) { return tti_graph_broken(ctx); }
    a->targets = tti_step_ids(ctx, targets, n);
    if (kept && kept->at) { a->kept = *kept; }
    if (a->kept.at && ctx->backend != tt_cpu_backend()) {
        tt_fail(ctx, TT_ERR_ARG, "%s: the batch has kept sets, which the CPU's backend alone reads", who);
        return tti_graph_broken(ctx);
    }
    a->packed_x = tti_packed(x);
    a->packed_w = tti_packed(w);
    a->logprobs = TT_F(op.out);
    a->entropy = op.out2 ? TT_F(op.out2) : NULL;
    if (!a->targets || !tti_graph_ok(ctx, ctx->backend->logprobs_forward(ctx, a))) { return NULL; }
    if (entropy_out) { *entropy_out = op.out2; }
    op.name = who;
    op.backward = tti_logprobs_back;
    op.n_in = 2;
    op.saved = a;
    return tti_record2(ctx, &op, in);
}

TT_API tt_tensor *tt_token_logprobs(tt_context *ctx, tt_tensor *x, tt_tensor *w, const int32_t *targets,
                                    float temperature, tt_tensor **entropy_out) {
    tt_tensor *in[2];
    in[0] = x;
    in[1] = w;
    return tti_token_logprobs(ctx, in, targets, NULL, temperature, entropy_out);
}

/* ---- [tt:autograd.custom] ops of the user's own ---- */

static tt_status tti_custom_back(tt_context *ctx, tti_node *node) {
    tt_op_desc *op = (tt_op_desc *)node->saved;
    (void)ctx;
    return op->backward ? op->backward(op->user, node->in, node->n_in, node->out) : TT_OK;
}

/* What forward leaves out is zero. A failure without words gets some. */
TT_API tt_tensor *tt_custom(tt_context *ctx, const tt_op_desc *desc, tt_tensor *const *inputs, int n_inputs,
                            int ndim, const int *shape) {
    const char *who = desc->name ? desc->name : "tt_custom";
    tt_op_desc *op;
    tt_tensor *y;
    tt_status status;
    if (!tti_inputs_ok(ctx, who, inputs, n_inputs)) { return NULL; }
    op = (tt_op_desc *)tti_step_alloc(ctx, sizeof *op);
    y = op ? tt_zeros(ctx, ndim, shape) : NULL;
    if (!y) { return tti_graph_broken(ctx); }
    *op = *desc;
    status = op->forward ? op->forward(op->user, inputs, n_inputs, y) : TT_OK;
    if (status != TT_OK && ctx->status == TT_OK) {
        tt_fail(ctx, status, "%s: forward failed: %s", who, tt_status_name(status));
    }
    return tti_graph_ok(ctx, status) ? tti_record(y, who, tti_custom_back, inputs, n_inputs, op) : NULL;
}

/* ---- [tt:autograd.recompute] recomputation ----
 * Forward: run the segment without recording, keep only its result, give the arena back to where it was.
 * Backward: run it again, recording, on fresh leaves that share the inputs' data and gradients, and walk
 * that piece of tape. Source: Chen et al. 2016, arXiv 1604.06174. */

typedef struct tti_segment { tt_segment_fn fn; void *user; } tti_segment;

/* Runs the segment's own tape from dy. The spare gradients lie above the arena's mark then: none may be
 * handed out later. */
static tt_status tti_segment_backward(tt_context *ctx, tt_tensor *y, const float *dy) {
    tti_spare *spares = ctx->spare_grads;
    tt_status status;
    if (!tt_grad(y)) { return ctx->status; }
    status = ctx->backend->axpy(ctx, y->grad, dy, 1.0f, y->size);
    ctx->spare_grads = NULL;
    if (status == TT_OK) { status = tti_run_backward(ctx); }
    ctx->spare_grads = spares;
    return status;
}

/* The gradients of the inputs are made before the arena's mark, so that they outlive the segment. */
static tt_status tti_recompute_back(tt_context *ctx, tti_node *node) {
    tti_segment *s = (tti_segment *)node->saved;
    tti_node *outer = ctx->tape;
    tti_mark host, device;
    tt_tensor *leaves[TTI_MAX_INPUTS], *y;
    tt_status status = TT_OK;
    int i;
    /* before the mark: these outlive the segment */
    for (i = 0; i < node->n_in; i++) { tt_grad(node->in[i]); }
    host = tti_arena_mark(&ctx->host);
    device = tti_arena_mark(&ctx->device);
    for (i = 0; i < node->n_in; i++) {
        leaves[i] = (tt_tensor *)tti_step_alloc(ctx, sizeof(tt_tensor));
        if (!leaves[i]) { return TT_ERR_MEM; }
        *leaves[i] = *node->in[i];
        leaves[i]->node = NULL;
        leaves[i]->persistent = 0;
    }
    ctx->tape = NULL;
    y = s->fn(ctx, s->user, leaves, node->n_in);
    if (!y && ctx->graph_error) { return ctx->status; }
    if (!y) { return tt_fail(ctx, TT_ERR_ARG, "tt_recompute: the segment returned NULL"); }
    if (y->requires_grad) { status = tti_segment_backward(ctx, y, node->out->grad); }
    if (status != TT_OK) { return status; }
    ctx->tape = outer;
    tti_arena_release(&ctx->host, host);
    tti_arena_release(&ctx->device, device);
    return TT_OK;
}

/* Runs the segment without recording, then moves its result down to where the arenas were before it (source
 * and target may overlap; a backend's copy allows that). */
static int tti_segment_run(tt_context *ctx, const tti_segment *s, tt_tensor *const *inputs, int n_inputs,
                           tt_tensor *y) {
    tti_mark host = tti_arena_mark(&ctx->host), device = tti_arena_mark(&ctx->device);
    tt_tensor *inner;
    void *data;
    ctx->no_grad++;
    inner = s->fn(ctx, s->user, inputs, n_inputs);
    ctx->no_grad--;
    if (!inner) { return 0; }
    *y = *inner;
    y->node = NULL;
    y->requires_grad = 0;
    data = inner->data;
    tti_arena_release(&ctx->host, host);
    tti_arena_release(&ctx->device, device);
    y->data = tti_arena_alloc(ctx, &ctx->device, y->size * sizeof(float));
    if (!y->data) { return tti_graph_broken(ctx) != NULL; }
    return y->data == data ||
           tti_graph_ok(ctx, ctx->backend->copy(ctx, y->data, data, y->size * sizeof(float)));
}

TT_API tt_tensor *tt_recompute(tt_context *ctx, tt_segment_fn fn, void *user, tt_tensor *const *inputs,
                               int n_inputs) {
    static const char *const who = "tt_recompute";
    tti_segment *s;
    tt_tensor *y;
    if (!tti_inputs_ok(ctx, who, inputs, n_inputs)) { return NULL; }
    if (n_inputs > TTI_MAX_INPUTS) {
        return tti_graph_fail(ctx, who, "number of inputs", n_inputs, TTI_MAX_INPUTS);
    }
    if (ctx->no_grad) { return fn(ctx, user, inputs, n_inputs); }
    s = (tti_segment *)tti_step_alloc(ctx, sizeof *s);
    y = s ? (tt_tensor *)tti_step_alloc(ctx, sizeof *y) : NULL;
    if (!y) { return tti_graph_broken(ctx); }
    s->fn = fn;
    s->user = user;
    if (!tti_segment_run(ctx, s, inputs, n_inputs, y)) { return NULL; }
    return tti_record(y, who, tti_recompute_back, inputs, n_inputs, s);
}

/* ==== 6. tokenizer =========================================================================
 * Text becomes ids in four steps. 1. Added tokens (such as "<end>") are cut out of the text. 2. What lies
 * between them is normalized, if the file asks for it. 3. It is split into pieces, roughly words, by a
 * pre-tokenizer. 4. Each piece starts as one token per byte (or per character), and byte pair encoding merges
 * neighbours: of all adjacent pairs that have a merge rule, the one with the lowest rank goes first, the
 * leftmost if it occurs twice, until no rule fits.
 * Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1.
 *
 * A tokenizer is: the bytes of every token (a dictionary from bytes to id and a table from id to bytes), and
 * the merge rules (a hash map from a pair of ids to its rank). Nothing in it changes after it is made, but
 * for the workers: one per thread, each with scratch memory and a cache from pieces to their ids.
 * In the files of byte-level BPE a byte is written as one printable character, GPT-2's mapping; a token is a
 * string of them. SentencePiece's kind keeps characters, writes a space as U+2581, and has tokens <0x00> to
 * <0xFF> for the bytes of characters that it does not know.
 *
 * From the bottom up: dictionaries, UTF-8 and classes of characters, pre-tokenizers, NFC, the object,
 * merging, encoding, decoding, the file (read and written), templates and conversations, training. Uses:
 * chapter 1, tti_parallel of chapter 2, and the tables of appendix B. */

#define TTI_MAX_VOCAB (1 << 21)
#define TTI_NOWHERE UINT32_MAX           /* no position: the end of a linked list */
#define TTI_SPACE_MARK "\xE2\x96\x81"    /* U+2581: a space in SentencePiece      */

/* ---- [tt:tokenizer.dict] dictionaries ----
 * tti_dict: from bytes to a number, a hash table with open addressing, at most half full. tti_pair_map: the
 * same from two numbers to a number from 0. Neither forgets an entry, so that probing needs no tombstones. */
typedef struct tti_word {
    uint64_t hash;
    size_t begin, size;              /* in the dictionary's bytes */
    int64_t value;
} tti_word;

typedef struct tti_dict {
    tt_text bytes;                   /* of all words, end to end */
    tti_word *words;
    size_t n, capacity;
    uint32_t *slots;                 /* word + 1; 0 = free       */
    size_t n_slots;                  /* a power of two           */
} tti_dict;

/* tti_grow for an array of any type: `array` is the address of its pointer. */
static tt_status tti_grow_array(tt_context *ctx, void *array, size_t *capacity, size_t want, size_t size) {
    void *data;
    tt_status status;
    memcpy(&data, array, sizeof data);
    status = tti_grow(ctx, &data, capacity, want, size);
    memcpy(array, &data, sizeof data);
    return status;
}

/* Open addressing: a word stands in the first slot from its hash on that was free; an empty one ends the
 * search. */
static tti_word *tti_dict_find(const tti_dict *d, const char *bytes, size_t size) {
    uint64_t hash;
    size_t slot;
    if (d->n == 0) { return NULL; }
    hash = tt_hash(bytes, size, 0);
    for (slot = (size_t)hash & (d->n_slots - 1); d->slots[slot]; slot = (slot + 1) & (d->n_slots - 1)) {
        tti_word *word = &d->words[d->slots[slot] - 1];
        if (word->hash == hash && word->size == size &&
            memcmp(d->bytes.data + word->begin, bytes, size) == 0) {
            return word;
        }
    }
    return NULL;
}

/* Puts word `index` into the first free slot from its hash on. */
static void tti_dict_place(tti_dict *d, uint32_t index) {
    size_t slot = (size_t)d->words[index].hash & (d->n_slots - 1);
    while (d->slots[slot]) { slot = (slot + 1) & (d->n_slots - 1); }
    d->slots[slot] = index + 1;
}

/* Twice the slots, before more than half of them are taken. Words stay where they are and are placed anew. */
static tt_status tti_dict_widen(tti_dict *d) {
    size_t wider = d->n_slots ? d->n_slots * 2 : 64;
    tt_context *ctx = d->bytes.ctx;
    uint32_t *slots, i;
    if (d->n >= (size_t)INT32_MAX) {
        return tt_fail(ctx, TT_ERR_MEM, "out of memory: more than %ld words", (long)INT32_MAX);
    }
    slots = (uint32_t *)tt_alloc(ctx, wider, sizeof *slots);
    if (!slots) { return TT_ERR_MEM; }
    tt_free(ctx, d->slots, d->n_slots, sizeof *slots);
    d->slots = slots;
    d->n_slots = wider;
    for (i = 0; i < (uint32_t)d->n; i++) { tti_dict_place(d, i); }
    return TT_OK;
}

/* Adds bytes that are not in the dictionary yet. NULL = out of memory, nothing changed. */
static tti_word *tti_dict_add(tti_dict *d, const char *bytes, size_t size, int64_t value) {
    tti_word *word;
    size_t begin = d->bytes.size;
    if ((d->n + 1) * 2 > d->n_slots && tti_dict_widen(d) != TT_OK) { return NULL; }
    if (tti_grow_array(d->bytes.ctx, &d->words, &d->capacity, d->n + 1, sizeof *word) != TT_OK) {
        return NULL;
    }
    if (tt_text_append(&d->bytes, bytes, size) != TT_OK) { return NULL; }
    word = &d->words[d->n++];
    word->hash = tt_hash(bytes, size, 0);
    word->begin = begin;
    word->size = size;
    word->value = value;
    tti_dict_place(d, (uint32_t)(d->n - 1));
    return word;
}

static void tti_dict_free(tti_dict *d) {
    tt_free(d->bytes.ctx, d->words, d->capacity, sizeof *d->words);
    tt_free(d->bytes.ctx, d->slots, d->n_slots, sizeof *d->slots);
    tt_text_free(&d->bytes);
}

typedef struct tti_pair_slot { int32_t left, right, value; } tti_pair_slot;      /* value + 1; 0 = free */
typedef struct tti_pair_map { tti_pair_slot *slots; size_t n, n_slots; } tti_pair_map;

/* The slot of the pair, or the free one where it belongs. The hash is Fibonacci's: the upper bits of a
 * product with 2^64 / golden ratio. */
static tti_pair_slot *tti_pair_slot_of(const tti_pair_map *map, int32_t left, int32_t right) {
    uint64_t hash = (((uint64_t)(uint32_t)left << 32) | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash >> 32) & (map->n_slots - 1);
    while (map->slots[slot].value && (map->slots[slot].left != left || map->slots[slot].right != right)) {
        slot = (slot + 1) & (map->n_slots - 1);
    }
    return &map->slots[slot];
}

/* -1 if the pair is not in the map. */
static int32_t tti_pair_find(const tti_pair_map *map, int32_t left, int32_t right) {
    return map->n ? tti_pair_slot_of(map, left, right)->value - 1 : -1;
}

static tt_status tti_pair_widen(tt_context *ctx, tti_pair_map *map) {
    tti_pair_map wider;
    size_t i;
    wider.n = map->n;
    wider.n_slots = map->n_slots ? map->n_slots * 2 : 64;
    wider.slots = (tti_pair_slot *)tt_alloc(ctx, wider.n_slots, sizeof *wider.slots);
    if (!wider.slots) { return TT_ERR_MEM; }
    for (i = 0; i < map->n_slots; i++) {
        const tti_pair_slot *old = &map->slots[i];
        if (old->value) { *tti_pair_slot_of(&wider, old->left, old->right) = *old; }
    }
    tt_free(ctx, map->slots, map->n_slots, sizeof *map->slots);
    *map = wider;
    return TT_OK;
}

/* Of two values of one pair the later one stays. */
static tt_status tti_pair_add(tt_context *ctx, tti_pair_map *map, int32_t left, int32_t right,
                              int32_t value) {
    tti_pair_slot *slot;
    if ((map->n + 1) * 2 > map->n_slots && tti_pair_widen(ctx, map) != TT_OK) { return TT_ERR_MEM; }
    slot = tti_pair_slot_of(map, left, right);
    if (!slot->value) { map->n++; }
    slot->left = left;
    slot->right = right;
    slot->value = value + 1;
    return TT_OK;
}

/* ---- [tt:tokenizer.utf8] characters ---- */

static size_t tti_utf8_put(uint32_t c, char out[4]) {
    size_t size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;
    for (i = size - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 0x3F));
        c >>= 6;
    }
    out[0] = (char)(size == 1 ? c : c | (0xF00u >> size & 0xFF));
    return size;
}

/* The character that ends at `at`; returns where it begins. */
static const char *tti_utf8_before(const char *begin, const char *at, uint32_t *c) {
    const char *p = at - 1;
    while (p > begin && at - p < 4 && ((unsigned char)*p & 0xC0) == 0x80) { p--; }
    if (tti_utf8(p, at, c) == (size_t)(at - p)) { return p; }
    *c = UINT32_MAX;
    return at - 1;
}

/* Bytes at the end of the text that may be the beginning of a character. */
static size_t tti_utf8_open(const char *begin, const char *end) {
    const unsigned char *b = (const unsigned char *)end;
    size_t n, size;
    for (n = 1; n <= 3 && n <= (size_t)(end - begin); n++) {
        unsigned lead = *--b;
        if ((lead & 0xC0) == 0x80) { continue; }
        size = lead >= 0xC2 && lead < 0xE0    ? 2
               : (lead & 0xF0) == 0xE0        ? 3
               : lead >= 0xF0 && lead <= 0xF4 ? 4
                                              : 0;
        if (size <= n) { return 0; }
        if (n == 1) { return 1; }
        /* The second byte rules out what is too long, a surrogate, or beyond U+10FFFF. */
        if ((lead == 0xE0 && b[1] < 0xA0) || (lead == 0xED && b[1] > 0x9F)) { return 0; }
        if ((lead == 0xF0 && b[1] < 0x90) || (lead == 0xF4 && b[1] > 0x8F)) { return 0; }
        return n;
    }
    return 0;
}

/* ---- [tt:tokenizer.unicode] classes of characters ----
 * Classes by general category: L* in three parts (UPPER is Lu and Lt), N*, M*, and the property White_Space.
 * CASED stands in the table only: capital and small letters in turn, beginning with a capital. */
enum { TTI_OTHER, TTI_LETTER, TTI_NUMBER, TTI_SPACE, TTI_UPPER, TTI_LOWER, TTI_MARK, TTI_CASED };

/* Sets of classes, one bit each. */
#define TTI_NUMBERS (1u << TTI_NUMBER)
#define TTI_SPACES (1u << TTI_SPACE)
#define TTI_LETTERS ((1u << TTI_LETTER) | (1u << TTI_UPPER) | (1u << TTI_LOWER))     /* \p{L}           */
#define TTI_SYMBOLS ((1u << TTI_OTHER) | (1u << TTI_MARK))                           /* [^\s\p{L}\p{N}] */

/* The tables of appendix B. CLASSES: first code point of a range * 8 + class. OTHER_NUMBERS, category No:
 * first and last of each range. COMBINING: first code point of a range * 256 + canonical combining class.
 * COMPOSED and ONE_WAY: rows {c, a, b} of the canonical decompositions c = a b (b 0: none) that NFC composes
 * again, and of those that it does not. */
enum { TTI_CLASSES, TTI_OTHER_NUMBERS, TTI_COMBINING, TTI_COMPOSED, TTI_ONE_WAY, TTI_N_TABLES };
static const char *const *tti_unicode_lines(int table);

/* `map` holds one byte for each code point below 2^16: its class, and whether NFC may change it or what
 * stands before it. */
#define TTI_MAP ((size_t)1 << 16)
#define TTI_UNSAFE 8
typedef struct tti_table { uint32_t *numbers; size_t n; } tti_table;
typedef struct tti_unicode {
    tti_table tables[TTI_N_TABLES];  /* the last three for NFC alone     */
    unsigned char *map;              /* [TTI_MAP]                        */
    tti_pair_map compose;            /* NFC's pairs: (a, b) to c         */
} tti_unicode;

/* A table is written in digits of five bits, the highest first; bit 5 says that another follows. Digit d is
 * the character '0' + d, but for two that mean something to a compiler. The first number of each row is the
 * difference to the first of the row before. */
static uint32_t tti_table_digit(char c) { return (uint32_t)(c == 'p' ? '\\' : c == 'q' ? '?' : c) - '0'; }

/* Once for each tokenizer, so that the rest of the chapter looks numbers up in plain arrays. */
static tt_status tti_table_decode(tt_context *ctx, int which, size_t width, tti_table *table) {
    const char *const *lines = tti_unicode_lines(which), *const *line;
    const char *at;
    uint32_t value = 0, *number;
    for (line = lines; *line; line++) {
        for (at = *line; *at; at++) { table->n += tti_table_digit(*at) < 32; }
    }
    number = table->numbers = (uint32_t *)tt_alloc(ctx, table->n, sizeof *table->numbers);
    if (!number) { return TT_ERR_MEM; }
    for (line = lines; *line; line++) {
        for (at = *line; *at; at++) {
            size_t place = (size_t)(number - table->numbers);
            value = value << 5 | (tti_table_digit(*at) & 31);
            if (tti_table_digit(*at) >= 32) { continue; }
            if (place % width == 0 && place > 0) { value += number[-(ptrdiff_t)width]; }
            *number++ = value;
            value = 0;
        }
    }
    return TT_OK;
}

/* The number of the last range that begins at or before c. */
static uint32_t tti_range_of(const tti_table *table, uint32_t c, int shift) {
    size_t low = 0, high = table->n;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (table->numbers[middle] >> shift <= c) { low = middle; } else { high = middle; }
    }
    return table->numbers[low];
}

static int tti_class_in(uint32_t range, uint32_t c) {
    int k = (int)(range & 7);
    return k != TTI_CASED ? k : (c - (range >> 3)) & 1 ? TTI_LOWER : TTI_UPPER;
}

static int tti_char_class(const tti_unicode *u, uint32_t c) {
    return c > 0x10FFFF ? TTI_OTHER : tti_class_in(tti_range_of(&u->tables[TTI_CLASSES], c, 3), c);
}

static uint32_t tti_combining_class(const tti_unicode *u, uint32_t c) {
    return tti_range_of(&u->tables[TTI_COMBINING], c, 8) & 0xFF;
}

/* The property White_Space, for where there is no table at hand. */
static int tti_is_white(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

/* \w of Rust's regular expressions, what "single_word" looks at: letters, marks, digits, and some signs of
 * other kinds. */
static int tti_is_word(const tti_unicode *u, uint32_t c) {
    static const uint32_t more[][2] = {{0x5F, 0x5F},       {0x200C, 0x200D},  {0x203F, 0x2040},
                                       {0x2054, 0x2054},   {0x24B6, 0x24E9},  {0xFE33, 0xFE34},
                                       {0xFE4D, 0xFE4F},   {0xFF3F, 0xFF3F},  {0x1F130, 0x1F149},
                                       {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
    const tti_table *others = &u->tables[TTI_OTHER_NUMBERS];
    size_t i;
    int k = tti_char_class(u, c);
    if (k == TTI_NUMBER) {
        for (i = 0; i < others->n; i += 2) {
            if (c >= others->numbers[i] && c <= others->numbers[i + 1]) { return 0; }
        }
        return 1;
    }
    for (i = 0; i < sizeof more / sizeof *more; i++) {
        if (c >= more[i][0] && c <= more[i][1]) { return 1; }
    }
    return (TTI_LETTERS | (1u << TTI_MARK)) >> k & 1;
}

/* Fills the tables and the map; to be called once more with nfc = 1 for what NFC needs. */
static tt_status tti_unicode_fill(tt_context *ctx, tti_unicode *u, int nfc) {
    const tti_table *classes = &u->tables[TTI_CLASSES], *rows;
    tt_status status = TT_OK;
    size_t i;
    uint32_t c = 0, k;
    if (!nfc) {
        TTI_TRY(tti_table_decode(ctx, TTI_CLASSES, 1, &u->tables[TTI_CLASSES]));
        TTI_TRY(tti_table_decode(ctx, TTI_OTHER_NUMBERS, 1, &u->tables[TTI_OTHER_NUMBERS]));
        for (i = 0; i < classes->n && c < TTI_MAP; i++) {
            uint32_t end = i + 1 < classes->n ? classes->numbers[i + 1] >> 3 : 0x110000;
            for (; c < end && c < TTI_MAP; c++) {
                u->map[c] = (unsigned char)tti_class_in(classes->numbers[i], c);
            }
        }
        goto done;
    }
    TTI_TRY(tti_table_decode(ctx, TTI_COMBINING, 1, &u->tables[TTI_COMBINING]));
    TTI_TRY(tti_table_decode(ctx, TTI_COMPOSED, 3, &u->tables[TTI_COMPOSED]));
    TTI_TRY(tti_table_decode(ctx, TTI_ONE_WAY, 3, &u->tables[TTI_ONE_WAY]));
    for (c = 0; c < TTI_MAP; c++) {
        /* vowels, final consonants */
        int hangul = (c >= 0x1161 && c <= 0x1175) || (c >= 0x11A8 && c <= 0x11C2);
        if (hangul || tti_combining_class(u, c)) { u->map[c] |= TTI_UNSAFE; }
    }
    rows = &u->tables[TTI_ONE_WAY];
    for (i = 0; i < rows->n; i += 3) {
        if (rows->numbers[i] < TTI_MAP) { u->map[rows->numbers[i]] |= TTI_UNSAFE; }
    }
    rows = &u->tables[TTI_COMPOSED];
    for (i = 0; i < rows->n; i += 3) {
        k = rows->numbers[i + 2];
        if (k < TTI_MAP) { u->map[k] |= TTI_UNSAFE; }
        TTI_TRY(tti_pair_add(ctx, &u->compose, (int32_t)rows->numbers[i + 1], (int32_t)k,
                             (int32_t)rows->numbers[i]));
    }
done:
    return status;
}

static void tti_unicode_free(tt_context *ctx, tti_unicode *u) {
    int k;
    for (k = 0; k < TTI_N_TABLES; k++) {
        tt_free(ctx, u->tables[k].numbers, u->tables[k].n, sizeof *u->tables[k].numbers);
    }
    tt_free(ctx, u->compose.slots, u->compose.n_slots, sizeof *u->compose.slots);
    tt_free(ctx, u->map, TTI_MAP, 1);
}

/* ---- [tt:tokenizer.bytes] bytes as printable characters ----
 * GPT-2 writes byte b as character b where that is printable Latin-1, the other 68 bytes as U+0100 and up, in
 * order. */
static int tti_printable(int c) { return (c > 32 && c < 127) || (c > 160 && c < 256 && c != 173); }

static int tti_byte_char(int b) {
    return tti_printable(b) ? b : b <= 32 ? 256 + b : b < 173 ? 289 + b - 127 : 323;
}

static int tti_char_byte(uint32_t c) {
    if (c < 256) { return tti_printable((int)c) ? (int)c : -1; }
    return c < 289 ? (int)c - 256 : c < 323 ? (int)c - 289 + 127 : c == 323 ? 173 : -1;
}

/* Replaces `out` by the printable form of the bytes. */
static tt_status tti_bytes_to_key(const char *bytes, size_t size, tt_text *out) {
    tt_status status = TT_OK;
    size_t i;
    out->size = 0;
    for (i = 0; i < size && status == TT_OK; i++) {
        char utf8[4];
        size_t n = tti_utf8_put((uint32_t)tti_byte_char((unsigned char)bytes[i]), utf8);
        status = tt_text_append(out, utf8, n);
    }
    return status;
}

/* The way back; *valid = 0 if a character stands for no byte. */
static tt_status tti_key_to_bytes(const char *key, size_t size, tt_text *out, int *valid) {
    const char *end = key + size;
    tt_status status = tt_text_append(out, "", 0);
    out->size = 0;
    *valid = 1;
    while (key < end && status == TT_OK) {
        uint32_t c;
        char byte;
        key += tti_utf8(key, end, &c);
        byte = (char)tti_char_byte(c);
        *valid = tti_char_byte(c) >= 0;
        if (!*valid) { break; }
        status = tt_text_append(out, &byte, 1);
    }
    return status;
}

/* ---- [tt:tokenizer.pieces] pre-tokenizers ----
 * Each pattern is written out by hand: a function that is given the beginning of a piece and returns its end.
 * Alternatives are tried in the order of the pattern, as a regular expression does; tests/test_tokenizer.c
 * and the parity test hold them against the packages' engines. */
#define TTI_PRETOKENIZE_MARKS 100      /* beside tt_pretokenizer: Llama 2, no pattern; see tti_piece_marks */
#define TTI_PRETOKENIZE_EACH_MARK 101  /* Metaspace with "split": each U+2581 begins a piece               */

#define TTI_RE_SHORT "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TTI_RE_GPT2_TAIL "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define TTI_RE_WORD TTI_RE_SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define TTI_RE_SYMBOLS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
#define TTI_RE_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TTI_RE_SMALL \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define TTI_RE_CAPITAL \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define TTI_RE_SLASHES "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TTI_RE_SPACES

/* Patterns of a Split as the files write them; the first of a kind is what is saved. */
typedef struct tti_pattern { tt_pretokenizer kind; const char *pattern; } tti_pattern;

static const tti_pattern tti_patterns[] = {
    {TT_PRETOKENIZE_WHITESPACE, " ?\\S+|\\s+(?!\\S)|\\s+"},
    {TT_PRETOKENIZE_GPT2, "'s|'t|'re|'ve|'m|'ll|'d" TTI_RE_GPT2_TAIL},
    {TT_PRETOKENIZE_GPT2, "'(?:[sdmt]|ll|ve|re)" TTI_RE_GPT2_TAIL},
    {TT_PRETOKENIZE_LLAMA3, TTI_RE_WORD "\\p{N}{1,3}" TTI_RE_SYMBOLS TTI_RE_SPACES},
    {TT_PRETOKENIZE_QWEN2, TTI_RE_WORD "\\p{N}" TTI_RE_SYMBOLS TTI_RE_SPACES},
    {TT_PRETOKENIZE_CL100K, TTI_RE_WORD "\\p{N}{1,3}" TTI_RE_SYMBOLS "\\s+\\z|" TTI_RE_SPACES},
    {TT_PRETOKENIZE_O200K,
     TTI_RE_SMALL TTI_RE_SHORT "?|" TTI_RE_CAPITAL TTI_RE_SHORT "?|\\p{N}{1,3}" TTI_RE_SLASHES},
    {TT_PRETOKENIZE_TEKKEN, TTI_RE_SMALL "|" TTI_RE_CAPITAL "|\\p{N}" TTI_RE_SLASHES}};
#define TTI_N_PATTERNS (sizeof tti_patterns / sizeof *tti_patterns)

/* saw_end: the end of the text was looked at, so the piece may go on where the text goes on. */
typedef struct tti_scanner {
    const tti_unicode *unicode;
    const unsigned char *map;        /* the unicode's */
    const char *end;
    int saw_end;
} tti_scanner;

static tti_scanner tti_scanner_make(const tti_unicode *unicode, const char *end) {
    tti_scanner s;
    s.unicode = unicode;
    s.map = unicode->map;
    s.end = end;
    s.saw_end = 0;
    return s;
}

/* Class and length of the character at `at`: by the map where it reaches, else by the table. */
static int tti_class_at(tti_scanner *s, const char *at, size_t *size) {
    unsigned char first = (unsigned char)*at;
    uint32_t c;
    *size = 1;
    if (first < 0x80) { return s->map[first] & 7; }
    *size = tti_utf8(at, s->end, &c);
    if (c < TTI_MAP) { return s->map[c] & 7; }
    if (c == UINT32_MAX && s->end - at < 4) { s->saw_end = 1; }       /* perhaps cut off */
    return tti_char_class(s->unicode, c);
}

/* End of the run of characters whose class is in the set. */
static const char *tti_class_run(tti_scanner *s, const char *at, unsigned set) {
    while (at < s->end) {
        size_t size;
        if (!(set >> tti_class_at(s, at, &size) & 1)) { return at; }
        at += size;
    }
    s->saw_end = 1;
    return at;
}

/* Whether a character of the set stands at `at`; none does at the end. */
static int tti_in(tti_scanner *s, const char *at, unsigned set) {
    size_t size;
    if (at >= s->end) {
        s->saw_end = 1;
        return 0;
    }
    return set >> tti_class_at(s, at, &size) & 1;
}

/* Length of 's 't 're 've 'm 'll 'd, or 0. With any_case also of 'S and the like; the long s, U+017F, is a
 * case of s. */
static size_t tti_contraction(tti_scanner *s, const char *at, int any_case) {
    size_t left = (size_t)(s->end - at);
    char a, b;
    if (left < 4) { s->saw_end = 1; }
    if (left < 2 || at[0] != '\'') { return 0; }
    a = any_case ? (char)(at[1] | 32) : at[1];
    if (any_case && (at[1] < 'A' || at[1] > 'z')) {
        return left > 2 && memcmp(at + 1, "\xC5\xBF", 2) == 0 ? 3 : 0;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') { return 2; }
    if (left < 3 || (any_case && (at[2] < 'A' || at[2] > 'z'))) { return 0; }
    b = any_case ? (char)(at[2] | 32) : at[2];
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \p{N}{0,most} */
static const char *tti_digits(tti_scanner *s, const char *at, int most) {
    while (most-- > 0 && tti_in(s, at, TTI_NUMBERS)) {
        size_t size;
        tti_class_at(s, at, &size);
        at += size;
    }
    return at;
}

/* [at, stop) is white space, and stop is no more. \s+(?!\S)|\s+ leaves the last character to the next piece,
 * unless the text ends there or it is the only one. */
static const char *tti_leave_last(const char *at, const char *stop, const char *end) {
    const char *last = stop - 1;
    if (stop == end) { return stop; }
    while (last > at && ((unsigned char)*last & 0xC0) == 0x80) { last--; }
    return last > at ? last : stop;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+: up to the last line feed of the white space, if there is one. */
static const char *tti_piece_space(tti_scanner *s, const char *at) {
    const char *stop = tti_class_run(s, at, TTI_SPACES), *line = stop;
    while (line > at && line[-1] != '\r' && line[-1] != '\n') { line--; }
    return line > at ? line : tti_leave_last(at, stop, s->end);
}

/* ' ?[^\s\p{L}\p{N}]+', and the characters of `tail` behind it; NULL if there is none. */
static const char *tti_piece_symbols(tti_scanner *s, const char *at, const char *tail) {
    const char *start = at + (*at == ' '), *stop;
    if (!tti_in(s, start, TTI_SYMBOLS)) { return NULL; }
    stop = tti_class_run(s, start, TTI_SYMBOLS);
    while (stop < s->end && *stop && strchr(tail, *stop)) { stop++; }
    if (stop == s->end) { s->saw_end = 1; }
    return stop;
}

/* GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * that is a contraction, a run of one class with at most one space before it, or white space. apart: the text
 * was split at every digit before, and ends there. */
static const char *tti_piece_gpt2(tti_scanner *s, const char *at, int apart) {
    static const unsigned sets[] = {TTI_SYMBOLS, TTI_LETTERS, TTI_NUMBERS, TTI_SPACES,
                                    TTI_LETTERS, TTI_LETTERS, TTI_SYMBOLS};      /* by class */
    const char *start = at + (*at == ' ' && s->end - at > 1), *stop;
    size_t size = *at == '\'' ? tti_contraction(s, at, 0) : 0;
    int k;
    if (size) { return at + size; }
    k = tti_class_at(s, start, &size);
    if (k == TTI_NUMBER && apart && start == at) { return at + size; }
    if (k != TTI_SPACE && !(k == TTI_NUMBER && apart)) { return tti_class_run(s, start, sets[k]); }
    stop = tti_class_run(s, at, TTI_SPACES);
    return apart && tti_in(s, stop, TTI_NUMBERS) ? stop : tti_leave_last(at, stop, s->end);
}

/* ' ?\S+|\s+(?!\S)|\s+' */
static const char *tti_piece_whitespace(tti_scanner *s, const char *at) {
    const char *start = at + (*at == ' ' && s->end - at > 1);
    if (!tti_in(s, start, TTI_SPACES)) { return tti_class_run(s, start, ~TTI_SPACES); }
    return tti_leave_last(at, tti_class_run(s, at, TTI_SPACES), s->end);
}

/* Llama 3, Qwen 2, cl100k: (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|,
 * with whole_end \s+$|, and then as in tti_piece_space. */
static const char *tti_piece_llama3(tti_scanner *s, const char *at, int digits, int whole_end) {
    size_t size = *at == '\'' ? tti_contraction(s, at, 1) : 0;
    const char *stop;
    int k;
    if (size) { return at + size; }
    k = tti_class_at(s, at, &size);
    if (TTI_LETTERS >> k & 1) { return tti_class_run(s, at, TTI_LETTERS); }
    if (k == TTI_NUMBER) { return tti_digits(s, at, digits); }
    if (*at != '\r' && *at != '\n' && tti_in(s, at + size, TTI_LETTERS)) {
        return tti_class_run(s, at + size, TTI_LETTERS);
    }
    stop = tti_piece_symbols(s, at, "\r\n");
    if (stop) { return stop; }
    return whole_end && tti_class_run(s, at, TTI_SPACES) == s->end ? s->end : tti_piece_space(s, at);
}

/* Capital: [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], small: [\p{Ll}\p{Lm}\p{Lo}\p{M}]; letters without case and marks
 * are both. */
#define TTI_BOTH ((1u << TTI_LETTER) | (1u << TTI_MARK))
#define TTI_CAPITALS (TTI_BOTH | (1u << TTI_UPPER))
#define TTI_SMALLS (TTI_BOTH | (1u << TTI_LOWER))

/* capital* small+: the capitals take what they can, and if no small letter follows they give back up to the
 * last character that is both. NULL if there is none. */
static const char *tti_word_small(tti_scanner *s, const char *at) {
    const char *both = NULL;
    while (tti_in(s, at, TTI_CAPITALS)) {
        size_t size;
        int k = tti_class_at(s, at, &size);
        at += size;
        if (TTI_BOTH >> k & 1) { both = at; }
    }
    return tti_in(s, at, TTI_SMALLS) ? tti_class_run(s, at, TTI_SMALLS) : both;
}

/* capital+ small* */
static const char *tti_word_capital(tti_scanner *s, const char *at) {
    const char *stop = tti_class_run(s, at, TTI_CAPITALS);
    return stop > at ? tti_class_run(s, stop, TTI_SMALLS) : NULL;
}

/* o200k, Mistral-Nemo:
 * [^\r\n\p{L}\p{N}]?capital*small+(?i:'s|...)?|[^\r\n\p{L}\p{N}]?capital+small*(?i:'s|...)?
 * |\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static const char *tti_piece_o200k(tti_scanner *s, const char *at, int digits, int contractions) {
    size_t size;
    int k = tti_class_at(s, at, &size);
    int prefix = (TTI_SYMBOLS | TTI_SPACES) >> k & 1 && *at != '\r' && *at != '\n';
    const char *word = prefix ? at + size : at, *stop;
    if (k == TTI_NUMBER) { return tti_digits(s, at, digits); }
    stop = tti_word_small(s, word);
    if (!stop && prefix) { stop = tti_word_small(s, at); }
    if (!stop) { stop = tti_word_capital(s, word); }
    if (stop) {
        if (stop == s->end) { s->saw_end = 1; }
        return contractions ? stop + tti_contraction(s, stop, 1) : stop;
    }
    stop = tti_piece_symbols(s, at, "\r\n/");
    return stop ? stop : tti_piece_space(s, at);
}

static int tti_mark_at(const char *at, const char *end) {
    return end - at >= 3 && memcmp(at, TTI_SPACE_MARK, 3) == 0;
}

/* Where no token holds a mark U+2581 (a space) behind anything else, no merge crosses the place before such a
 * mark. each: marks side by side are pieces of their own. */
static const char *tti_piece_marks(tti_scanner *s, const char *at, int each) {
    const char *end = s->end;
    while (tti_mark_at(at, end)) {
        at += 3;
        if (each) { break; }
    }
    while (at < end) {
        const char *mark = (const char *)memchr(at, TTI_SPACE_MARK[0], (size_t)(end - at));
        if (!mark || end - mark < 3) { return end; }
        if (tti_mark_at(mark, end)) { return mark; }
        at = mark + 1;
    }
    return end;
}

/* End of the piece that begins at `at`. */
static const char *tti_piece(int kind, tti_scanner *s, const char *at) {
    switch (kind) {
    case TT_PRETOKENIZE_GPT2: return tti_piece_gpt2(s, at, 0);
    case TT_PRETOKENIZE_WHITESPACE: return tti_piece_whitespace(s, at);
    case TT_PRETOKENIZE_SMOLLM2: return tti_piece_gpt2(s, at, 1);
    case TT_PRETOKENIZE_LLAMA3: return tti_piece_llama3(s, at, 3, 0);
    case TT_PRETOKENIZE_QWEN2: return tti_piece_llama3(s, at, 1, 0);
    case TT_PRETOKENIZE_CL100K: return tti_piece_llama3(s, at, 3, 1);
    case TT_PRETOKENIZE_O200K: return tti_piece_o200k(s, at, 3, 1);
    case TT_PRETOKENIZE_TEKKEN: return tti_piece_o200k(s, at, 1, 0);
    case TTI_PRETOKENIZE_MARKS: return tti_piece_marks(s, at, 0);
    case TTI_PRETOKENIZE_EACH_MARK: return tti_piece_marks(s, at, 1);
    default: break;                  /* TT_PRETOKENIZE_BYTES: the text is one piece */
    }
    s->saw_end = 1;
    return s->end;
}

/* ---- [tt:tokenizer.worker] what a thread needs ----
 * The cache maps short pieces to their ids: direct-mapped, one entry of 64 bytes, a cache line, for each
 * value of 14 bits of the hash, 1 MiB in all, which stays in the second-level cache. 24 bytes hold nearly
 * every word of a text, and 8 ids nearly every such word in tokens; what is longer is merged each time. */
#define TTI_CACHED_BYTES 24
#define TTI_CACHED_IDS 8
#define TTI_CACHE_BITS 14
#define TTI_CACHE_SIZE ((size_t)1 << TTI_CACHE_BITS)
typedef struct tti_cached {
    uint64_t words[TTI_CACHED_BYTES / 8];     /* the piece, zeros behind it */
    int32_t size, n, ids[TTI_CACHED_IDS];     /* size 0 = a free entry      */
} tti_cached;

typedef struct tti_link { int32_t id; uint32_t rank, previous, next; } tti_link;    /* rank of (this, next) */
typedef struct tti_bytes { char *data; size_t size, capacity; } tti_bytes;
typedef struct tti_found { size_t at; int32_t id, size; } tti_found;

typedef struct tti_bpe_worker {
    tt_context *ctx;
    tti_cached *cache;               /* [TTI_CACHE_SIZE]; made when first needed                */
    tti_link *links;                 /* of the longest piece so far; heap and symbols likewise  */
    uint64_t *heap;
    int32_t *symbols;
    uint32_t *chars;                 /* NFC: characters of one stretch                          */
    size_t links_capacity, heap_capacity, symbols_capacity, chars_capacity;
    tti_bytes normal, prefixed;
    tti_found *found;                /* added tokens in what is being encoded, the first one last */
    size_t n_found, found_capacity;
    tt_ids ids;                      /* of a batch                                              */
} tti_bpe_worker;

/* Several workers may need memory at once, and a context serves one thread at a time. `array`: a pointer's
 * address. */
static tt_status tti_worker_grow(tti_bpe_worker *w, void *array, size_t *capacity, size_t want, size_t size) {
    void *data;
    tt_status status;
    if (want <= *capacity) { return TT_OK; }
    memcpy(&data, array, sizeof data);
    status = tti_grow_shared(w->ctx, &data, capacity, want, size);
    memcpy(array, &data, sizeof data);
    return status;
}

static tt_status tti_bytes_append(tti_bpe_worker *w, tti_bytes *b, const char *bytes, size_t size) {
    tt_status status = tti_worker_grow(w, &b->data, &b->capacity, b->size + size, 1);
    if (status != TT_OK) { return status; }
    if (size) { memcpy(b->data + b->size, bytes, size); }
    b->size += size;
    return TT_OK;
}

static void tti_worker_free(tti_bpe_worker *w) {
    tt_free(w->ctx, w->cache, w->cache ? TTI_CACHE_SIZE : 0, sizeof *w->cache);
    tt_free(w->ctx, w->links, w->links_capacity, sizeof *w->links);
    tt_free(w->ctx, w->heap, w->heap_capacity, sizeof *w->heap);
    tt_free(w->ctx, w->symbols, w->symbols_capacity, sizeof *w->symbols);
    tt_free(w->ctx, w->chars, w->chars_capacity, sizeof *w->chars);
    tt_free(w->ctx, w->normal.data, w->normal.capacity, 1);
    tt_free(w->ctx, w->prefixed.data, w->prefixed.capacity, 1);
    tt_free(w->ctx, w->found, w->found_capacity, sizeof *w->found);
    tt_ids_free(&w->ids);
}

/* ---- [tt:tokenizer.nfc] NFC ----
 * Source: Unicode Standard Annex 15; section 3.11 of the standard. Most text is NFC already. A character is
 * unsafe if NFC may change it or join it to the one before; a stretch is a character with the unsafe ones
 * behind it, and only stretches are decomposed, ordered and composed. In a stretch a character is written
 * combining class << 21 | code point. */
#define TTI_HANGUL 0xAC00u           /* syllables: ((initial * 21) + vowel) * 28 + final */
#define TTI_N_HANGUL 11172u

/* The row {c, a, b} of a table of decompositions, or NULL. */
static const uint32_t *tti_decomposition(const tti_table *table, uint32_t c) {
    size_t low = 0, high = table->n / 3;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table->numbers[3 * middle] < c) { low = middle + 1; } else { high = middle; }
    }
    return low < table->n / 3 && table->numbers[3 * low] == c ? table->numbers + 3 * low : NULL;
}

/* Whether c may change under NFC, or join what stands before it: only such characters take the long way. */
static int tti_unsafe(const tti_unicode *u, uint32_t c) {
    const tti_table *composed = &u->tables[TTI_COMPOSED];
    size_t i;
    if (c < TTI_MAP) { return u->map[c] & TTI_UNSAFE; }
    if (c > 0x10FFFF) { return 0; }
    if (tti_combining_class(u, c) || tti_decomposition(&u->tables[TTI_ONE_WAY], c)) { return 1; }
    for (i = composed->n; composed->numbers[i - 3] >= TTI_MAP; i -= 3) {     /* the few rows beyond the map */
        if (composed->numbers[i - 1] == c) { return 1; }
    }
    return 0;
}

/* Appends the full decomposition of c to w->chars, which holds *n. */
static tt_status tti_nfd_put(const tti_unicode *u, tti_bpe_worker *w, size_t *n, uint32_t c) {
    const uint32_t *row;
    tt_status status = TT_OK;
    if (c - TTI_HANGUL < TTI_N_HANGUL) {
        uint32_t s = c - TTI_HANGUL;
        TTI_TRY(tti_nfd_put(u, w, n, 0x1100 + s / 588));
        TTI_TRY(tti_nfd_put(u, w, n, 0x1161 + s % 588 / 28));
        return s % 28 ? tti_nfd_put(u, w, n, 0x11A7 + s % 28) : TT_OK;
    }
    row = tti_decomposition(&u->tables[TTI_COMPOSED], c);
    if (!row) { row = tti_decomposition(&u->tables[TTI_ONE_WAY], c); }
    if (row) {                                       /* at most four deep */
        TTI_TRY(tti_nfd_put(u, w, n, row[1]));
        return row[2] ? tti_nfd_put(u, w, n, row[2]) : TT_OK;
    }
    TTI_TRY(tti_worker_grow(w, &w->chars, &w->chars_capacity, *n + 1, sizeof *w->chars));
    w->chars[(*n)++] = tti_combining_class(u, c) << 21 | c;
done:
    return status;
}

/* Canonical ordering: marks in a row by class, equal classes as they stood. Long rows by counting: sorting by
 * insertion alone takes quadratic time on hostile text. */
static tt_status tti_nfc_order(tti_bpe_worker *w, size_t n) {
    size_t begin, end, i, k;
    for (begin = 0; begin < n; begin = end + 1) {
        size_t count;
        uint32_t c, kind;
        for (end = begin; end < n && w->chars[end] >> 21; end++) {}
        count = end - begin;
        for (i = begin + 1; i < end && count <= 32; i++) {
            c = w->chars[i];
            for (k = i; k > begin && w->chars[k - 1] >> 21 > c >> 21; k--) { w->chars[k] = w->chars[k - 1]; }
            w->chars[k] = c;
        }
        if (count <= 32) { continue; }
        if (tti_worker_grow(w, &w->chars, &w->chars_capacity, n + count, sizeof *w->chars) != TT_OK) {
            return TT_ERR_MEM;
        }
        for (k = n, kind = 1; kind < 256; kind++) {
            for (i = begin; i < end; i++) {
                if (w->chars[i] >> 21 == kind) { w->chars[k++] = w->chars[i]; }
            }
        }
        memcpy(w->chars + begin, w->chars + n, count * sizeof *w->chars);
    }
    return TT_OK;
}

/* a and b in one character, or 0. */
static uint32_t tti_nfc_pair(const tti_unicode *u, uint32_t a, uint32_t b) {
    int32_t c;
    if (a - 0x1100 < 19 && b - 0x1161 < 21) { return TTI_HANGUL + ((a - 0x1100) * 21 + b - 0x1161) * 28; }
    if (a - TTI_HANGUL < TTI_N_HANGUL && (a - TTI_HANGUL) % 28 == 0 && b - 0x11A8 < 27) {
        return a + b - 0x11A7;
    }
    c = tti_pair_find(&u->compose, (int32_t)a, (int32_t)b);
    return c < 0 ? 0 : (uint32_t)c;
}

/* Joins each character to the last starter, unless one of the same or a higher class stands between. */
static size_t tti_nfc_compose(const tti_unicode *u, uint32_t *chars, size_t n) {
    const uint32_t code = 0x1FFFFF;
    size_t i, kept = 0, starter = SIZE_MAX;
    for (i = 0; i < n; i++) {
        uint32_t c = chars[i], joined = 0;
        if (starter != SIZE_MAX && (kept == starter + 1 || (chars[kept - 1] >> 21 < c >> 21))) {
            joined = tti_nfc_pair(u, chars[starter] & code, c & code);
        }
        if (joined) {
            chars[starter] = joined;
            continue;
        }
        if (!(c >> 21)) { starter = kept; }
        chars[kept++] = c;
    }
    return kept;
}

/* Decomposes, orders and composes one stretch, and appends it. */
static tt_status tti_nfc_stretch(const tti_unicode *u, tti_bpe_worker *w, const char *at, const char *end,
                                 tti_bytes *out) {
    size_t n = 0, i;
    tt_status status = TT_OK;
    while (at < end) {
        uint32_t c;
        at += tti_utf8(at, end, &c);
        TTI_TRY(tti_nfd_put(u, w, &n, c));
    }
    TTI_TRY(tti_nfc_order(w, n));
    n = tti_nfc_compose(u, w->chars, n);
    for (i = 0; i < n; i++) {
        char utf8[4];
        TTI_TRY(tti_bytes_append(w, out, utf8, tti_utf8_put(w->chars[i] & 0x1FFFFF, utf8)));
    }
done:
    return status;
}

/* Appends the NFC of [at, end) to out, which is empty, or nothing if it is the text itself. Invalid bytes
 * stay as they are. base: the character before `at`, with which an unsafe one would join. */
static tt_status tti_nfc(const tti_unicode *u, tti_bpe_worker *w, const char *at, const char *end,
                         tti_bytes *out) {
    const char *copied = at, *base = NULL, *stretch;
    tt_status status = TT_OK;
    uint32_t c;
    size_t size;
    while (at < end) {
        if ((unsigned char)*at < 0x80) {
            base = at++;
            continue;
        }
        size = tti_utf8(at, end, &c);
        if (!tti_unsafe(u, c)) {
            base = c == UINT32_MAX ? NULL : at;
            at += size;
            continue;
        }
        stretch = base ? base : at;
        for (at += size; at < end; at += size) {
            size = tti_utf8(at, end, &c);
            if (!tti_unsafe(u, c)) { break; }
        }
        TTI_TRY(tti_bytes_append(w, out, copied, (size_t)(stretch - copied)));
        TTI_TRY(tti_nfc_stretch(u, w, stretch, at, out));
        copied = at;
        base = NULL;
    }
    if (out->size > 0) { status = tti_bytes_append(w, out, copied, (size_t)(end - copied)); }
done:
    return status;
}

/* ---- [tt:tokenizer.object] the tokenizer ---- */

enum {
    TTI_USED = 1,                    /* the id has a token                                        */
    TTI_ADDED = 2,                   /* of added_tokens                                           */
    TTI_SPECIAL = 4,
    TTI_IN_MODEL = 8,                /* of model.vocab                                            */
    TTI_NORMALIZED = 16,             /* looked for behind the normalizer, not in the raw text     */
    TTI_LSTRIP = 32,                 /* takes the white space before it along; RSTRIP: behind it  */
    TTI_RSTRIP = 64,
    TTI_WHOLE = 128,                 /* the token's own bytes encode to exactly this token        */
    TTI_SINGLE = 256,                /* "single_word": not inside a word                          */
    TTI_BYTE = 512                   /* <0x41>: the byte 0x41, SentencePiece's kind only          */
};
/* Bytes in added if TTI_ADDED, else in vocab */
typedef struct tti_token { size_t begin, size; int flags; } tti_token;
typedef struct tti_merge { int32_t left, right, result; } tti_merge;

/* A tree of the added tokens, read from their ends: children of a branch are its child and that one's
 * siblings. fail: the longest branch with which what has been read ends elsewhere in the tree. Source: Aho
 * and Corasick 1975. */
typedef struct tti_branch {
    int32_t id, size;                /* the longest token that ends the bytes read, -1 = none */
    int32_t child, sibling, fail;
    unsigned char byte;
} tti_branch;
#define TTI_MAX_TEMPLATE 8

/* SentencePiece's kind: what puts U+2581 in the place of spaces and before the text. The normalizer does so
 * in each section between added tokens; Metaspace, behind it, before each section (or the first, or none)
 * that has no space there already. */
typedef enum tti_marks {
    TTI_MARKS_NONE, TTI_MARKS_NORMALIZER, TTI_MARKS_ALWAYS, TTI_MARKS_FIRST, TTI_MARKS_NEVER
} tti_marks;
/* From TTI_MARKS_ALWAYS on */
static const char *const tti_prepend_schemes[] = {"always", "first", "never"};

struct tt_tokenizer {
    tt_context *ctx;
    int pretokenizer;                /* a tt_pretokenizer, or TTI_PRETOKENIZE_... */
    tti_marks characters;            /* not 0: SentencePiece's kind, tokens are texts, not bytes in GPT-2's
                                        mapping */
    int strip;                       /* decoding takes one space off at the start */
    int ignore_merges;               /* a piece that is a token is taken whole */
    int nfc, prefix_space;           /* prefix_space: "add_prefix_space" of ByteLevel */
    int refuse;                      /* TT_REFUSE_ */
    tti_dict vocab, added;           /* bytes to id */
    tti_token *tokens;               /* [n_tokens]; ids may have holes */
    size_t n_tokens, tokens_capacity;
    tti_merge *merges;               /* in the order of their rank */
    size_t n_merges, merges_capacity;
    tti_pair_map ranks;              /* (left id, right id) to the merge */
    int32_t byte_id[256];            /* -1 = this byte has no token */
    tti_branch *branches;            /* of added tokens; the first two are roots */
    size_t n_branches, branches_capacity;
    int32_t roots[2][256];           /* by last byte, 0 = none: [0] cut from the raw text, [1] "normalized" */
    tti_unicode unicode;
    int32_t before[TTI_MAX_TEMPLATE], after[TTI_MAX_TEMPLATE];     /* tokens around a document */
    int n_before, n_after;
    tti_bpe_worker *workers;         /* [n_workers], one per thread of the context */
    int n_workers;
};

TT_API void tt_tokenizer_destroy(tt_tokenizer *t) {
    int i;
    if (!t) { return; }
    for (i = 0; t->workers && i < t->n_workers; i++) { tti_worker_free(&t->workers[i]); }
    tt_free(t->ctx, t->workers, (size_t)t->n_workers, sizeof *t->workers);
    tti_unicode_free(t->ctx, &t->unicode);
    tti_dict_free(&t->vocab);
    tti_dict_free(&t->added);
    tt_free(t->ctx, t->tokens, t->tokens_capacity, sizeof *t->tokens);
    tt_free(t->ctx, t->merges, t->merges_capacity, sizeof *t->merges);
    tt_free(t->ctx, t->ranks.slots, t->ranks.n_slots, sizeof *t->ranks.slots);
    tt_free(t->ctx, t->branches, t->branches_capacity, sizeof *t->branches);
    tt_free(t->ctx, t, 1, sizeof *t);
}

/* Empty: no tokens, no rules; each thread gets a worker with its cache and scratch memory. */
static tt_tokenizer *tti_tokenizer_create(tt_context *ctx) {
    tt_tokenizer *t = (tt_tokenizer *)tt_alloc(ctx, 1, sizeof *t);
    int i;
    if (!t) { return NULL; }
    t->ctx = t->vocab.bytes.ctx = t->added.bytes.ctx = ctx;
    t->refuse = TT_REFUSE_BYTES;
    t->unicode.map = (unsigned char *)tt_alloc(ctx, TTI_MAP, 1);
    t->n_workers = ctx->n_threads > 0 ? ctx->n_threads : 1;
    t->workers = (tti_bpe_worker *)tt_alloc(ctx, (size_t)t->n_workers, sizeof *t->workers);
    for (i = 0; t->workers && i < t->n_workers; i++) { t->workers[i].ctx = t->workers[i].ids.ctx = ctx; }
    if (!t->unicode.map || !t->workers || tti_unicode_fill(ctx, &t->unicode, 0) != TT_OK) {
        tt_tokenizer_destroy(t);
        return NULL;
    }
    return t;
}

static const char *tti_token_bytes(const tt_tokenizer *t, const tti_token *token) {
    return (token->flags & TTI_ADDED ? t->added.bytes.data : t->vocab.bytes.data) + token->begin;
}

/* Enters a token into the table, which is made longer if need be, and into a dictionary: added with
 * TTI_ADDED, else vocab. */
static tt_status tti_token_add(tt_tokenizer *t, int32_t id, const char *bytes, size_t size, int flags) {
    size_t n = (size_t)id + 1;
    const tti_word *word;
    if (tti_grow_array(t->ctx, &t->tokens, &t->tokens_capacity, n, sizeof *t->tokens) != TT_OK) {
        return TT_ERR_MEM;
    }
    if (t->n_tokens < n) { t->n_tokens = n; }
    word = tti_dict_add(flags & TTI_ADDED ? &t->added : &t->vocab, bytes, size, id);
    if (!word) { return TT_ERR_MEM; }
    t->tokens[id].begin = word->begin;
    t->tokens[id].size = size;
    t->tokens[id].flags = flags | TTI_USED;
    return TT_OK;
}

static int tti_id_taken(const tt_tokenizer *t, int32_t id) {
    return (size_t)id < t->n_tokens && t->tokens[id].flags;
}

static tt_status tti_merge_add(tt_tokenizer *t, int32_t left, int32_t right, int32_t result) {
    tti_merge *merge;
    size_t n = t->n_merges + 1;
    if (tti_grow_array(t->ctx, &t->merges, &t->merges_capacity, n, sizeof *merge) != TT_OK) {
        return TT_ERR_MEM;
    }
    if (tti_pair_add(t->ctx, &t->ranks, left, right, (int32_t)t->n_merges) != TT_OK) { return TT_ERR_MEM; }
    merge = &t->merges[t->n_merges++];
    merge->left = left;
    merge->right = right;
    merge->result = result;
    return TT_OK;
}

TT_API int tt_vocab_size(const tt_tokenizer *t) { return (int)t->n_tokens; }

/* SentencePiece's kind: the vocabulary has marks where the text has spaces, and names for bytes. */
static const tti_word *tti_word_with_marks(const tt_tokenizer *t, const char *text) {
    char key[3 * 256];
    size_t n = 0;
    for (; *text && n + 3 <= sizeof key; text++) {
        if (*text == ' ') {
            memcpy(key + n, TTI_SPACE_MARK, 3);
            n += 3;
        } else {
            key[n++] = *text;
        }
    }
    return *text ? NULL : tti_dict_find(&t->vocab, key, n);
}

TT_API int tt_token_id(const tt_tokenizer *t, const char *text) {
    size_t size = strlen(text);
    const tti_word *word = tti_dict_find(&t->added, text, size);
    if (!word && t->characters && strchr(text, ' ')) { word = tti_word_with_marks(t, text); }
    if (!word) { word = tti_dict_find(&t->vocab, text, size); }
    if (!word && t->characters && size == 1) { return (int)t->byte_id[(unsigned char)*text]; }
    return word ? (int)word->value : -1;
}

TT_API int tt_token_is_special(const tt_tokenizer *t, int id) {
    return id >= 0 && (size_t)id < t->n_tokens && (t->tokens[id].flags & TTI_SPECIAL) != 0;
}

TT_API void tt_tokenizer_refuse(tt_tokenizer *t, int what) {
    int i;
    t->refuse = what;
    for (i = 0; i < t->n_workers; i++) {             /* cached pieces may lack bytes */
        tti_cached *cache = t->workers[i].cache;
        if (cache) { memset(cache, 0, TTI_CACHE_SIZE * sizeof *cache); }
    }
}

/* ---- [tt:tokenizer.merge] byte pair encoding ----
 * Of all adjacent pairs with a rule the lowest rank first, of equal ones the leftmost. Short pieces: a plain
 * search for the best pair, quadratic, but without the heap's bookkeeping; up to 48 symbols it is faster. */
#define TTI_SHORT_PIECE 48

/* ids: the piece's symbols, n <= TTI_SHORT_PIECE. Merges in place and returns how many are left. */
static size_t tti_merge_short(const tt_tokenizer *t, int32_t *ids, size_t n) {
    uint32_t ranks[TTI_SHORT_PIECE];        /* of (ids[i], ids[i + 1]); UINT32_MAX = no rule, also at the
                                               end */
    size_t i;
    for (i = 0; i < n; i++) {
        ranks[i] = i + 1 < n ? (uint32_t)tti_pair_find(&t->ranks, ids[i], ids[i + 1]) : UINT32_MAX;
    }
    while (n > 0) {
        size_t best = 0;
        for (i = 1; i < n; i++) {
            if (ranks[i] < ranks[best]) { best = i; }
        }
        if (ranks[best] == UINT32_MAX) { break; }
        ids[best] = t->merges[ranks[best]].result;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        memmove(ranks + best, ranks + best + 1, (n - best) * sizeof *ranks);
        if (best + 1 < n) { ranks[best] = (uint32_t)tti_pair_find(&t->ranks, ids[best], ids[best + 1]); }
        if (best > 0) { ranks[best - 1] = (uint32_t)tti_pair_find(&t->ranks, ids[best - 1], ids[best]); }
    }
    return n;
}

/* Long pieces: a linked list of tokens and a heap of mergeable pairs, each rank * 2^32 + position, so that
 * the least is the lowest rank and of these the leftmost. A pair that has changed since is skipped when it
 * comes up. */
typedef struct tti_chain { const tt_tokenizer *t; tti_link *links; uint64_t *heap; size_t n_heap; } tti_chain;

/* Looks the pair (at, next) up and, if it has a rule, enters it into the heap. */
static void tti_chain_push(tti_chain *chain, uint32_t at) {
    tti_link *link = &chain->links[at];
    uint64_t pair, *heap = chain->heap;
    size_t i;
    link->rank = UINT32_MAX;
    if (link->next == TTI_NOWHERE) { return; }
    link->rank = (uint32_t)tti_pair_find(&chain->t->ranks, link->id, chain->links[link->next].id);
    if (link->rank == UINT32_MAX) { return; }
    pair = ((uint64_t)link->rank << 32) | at;
    for (i = chain->n_heap++; i > 0 && heap[(i - 1) / 2] > pair; i = (i - 1) / 2) {
        heap[i] = heap[(i - 1) / 2];
    }
    heap[i] = pair;
}

/* The heap's least value; the last one takes its place and sinks below all that are smaller. */
static uint64_t tti_chain_pop(tti_chain *chain) {
    uint64_t *heap = chain->heap, least = heap[0], last = heap[--chain->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < chain->n_heap) {
        if (child + 1 < chain->n_heap && heap[child + 1] < heap[child]) { child++; }
        if (heap[child] >= last) { break; }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return least;
}

/* Joins `at` with its right neighbour, and looks up the two pairs that are new. */
static void tti_chain_merge(tti_chain *chain, uint32_t at) {
    tti_link *link = &chain->links[at];
    uint32_t gone = link->next;
    link->id = chain->t->merges[link->rank].result;
    link->next = chain->links[gone].next;
    chain->links[gone].rank = UINT32_MAX;
    if (link->next != TTI_NOWHERE) { chain->links[link->next].previous = at; }
    tti_chain_push(chain, at);
    if (link->previous != TTI_NOWHERE) { tti_chain_push(chain, link->previous); }
}

/* Merges in place and sets *n to how many are left. The heap holds n - 1 pairs at first, and each of at most
 * n - 1 merges takes one out and adds two. */
static tt_status tti_merge_long(const tt_tokenizer *t, tti_bpe_worker *w, int32_t *ids, size_t *n) {
    tti_chain chain;
    size_t kept = 0;
    uint32_t i;
    if (tti_worker_grow(w, &w->links, &w->links_capacity, *n, sizeof *w->links) != TT_OK) {
        return TT_ERR_MEM;
    }
    if (tti_worker_grow(w, &w->heap, &w->heap_capacity, 2 * *n, sizeof *w->heap) != TT_OK) {
        return TT_ERR_MEM;
    }
    chain.t = t;
    chain.links = w->links;
    chain.heap = w->heap;
    chain.n_heap = 0;
    for (i = 0; i < *n; i++) {
        chain.links[i].id = ids[i];
        chain.links[i].previous = i > 0 ? i - 1 : TTI_NOWHERE;
        chain.links[i].next = i + 1 < *n ? i + 1 : TTI_NOWHERE;
    }
    for (i = 0; i < *n; i++) { tti_chain_push(&chain, i); }
    while (chain.n_heap > 0) {
        uint64_t pair = tti_chain_pop(&chain);
        if (chain.links[(uint32_t)pair].rank == (uint32_t)(pair >> 32)) {
            tti_chain_merge(&chain, (uint32_t)pair);
        }
    }
    for (i = 0; i != TTI_NOWHERE; i = chain.links[i].next) { ids[kept++] = chain.links[i].id; }
    *n = kept;
    return TT_OK;
}

/* The tokens that a piece begins as; ids has a place for each byte. *unknown is set to the first byte without
 * a token, or NULL; such bytes are left out. Returns how many there are. */
static size_t tti_symbols(const tt_tokenizer *t, const char *at, size_t size, int32_t *ids,
                          const char **unknown) {
    const char *end = at + size;
    size_t n = 0;
    *unknown = NULL;
    while (at < end) {
        uint32_t c;
        size_t bytes = t->characters ? tti_utf8(at, end, &c) : 1;
        const tti_word *word = t->characters ? tti_dict_find(&t->vocab, at, bytes) : NULL;
        if (word) {
            ids[n++] = (int32_t)word->value;
            at += bytes;
            continue;
        }
        for (; bytes > 0; bytes--, at++) {
            int32_t id = t->byte_id[(unsigned char)*at];
            if (id >= 0) { ids[n++] = id; } else if (!*unknown) { *unknown = at; }
        }
    }
    return n;
}

static int tti_hex(char c) {
    static const char digits[] = "0123456789ABCDEF";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Whether a token's text is the name of a byte, "<0x41>". */
static int tti_is_byte_name(const char *key, size_t size) {
    return size == 6 && memcmp(key, "<0x", 3) == 0 && tti_hex(key[3]) >= 0 && tti_hex(key[4]) >= 0 &&
           key[5] == '>';
}

/* Fills what follows from tokens and merges: byte_id, and TTI_WHOLE. Most words of a text are one token each;
 * TTI_WHOLE marks the tokens for which the dictionary alone gives what merging would give. */
static void tti_tokenizer_finish(tt_tokenizer *t) {
    size_t i, n;
    for (i = 0; i < 256; i++) {
        char byte = (char)i;
        const tti_word *word = t->characters ? NULL : tti_dict_find(&t->vocab, &byte, 1);
        t->byte_id[i] = word ? (int32_t)word->value : -1;
    }
    for (i = 0; i < t->n_tokens; i++) {
        const char *bytes = tti_token_bytes(t, &t->tokens[i]);
        if (t->tokens[i].flags & TTI_BYTE) {
            t->byte_id[tti_hex(bytes[3]) * 16 + tti_hex(bytes[4])] = (int32_t)i;
        }
    }
    for (i = 0; i < t->n_tokens; i++) {
        tti_token *token = &t->tokens[i];
        const char *bytes = tti_token_bytes(t, token), *unknown;
        const tti_word *word;
        int32_t ids[TTI_SHORT_PIECE];
        token->flags &= ~TTI_WHOLE;
        if (!(token->flags & TTI_IN_MODEL) || token->flags & TTI_SPECIAL) { continue; }
        word = tti_dict_find(&t->vocab, bytes, token->size);
        if (!word || word->value != (int64_t)i) { continue; }
        if (t->ignore_merges) { token->flags |= TTI_WHOLE; }
        if (token->size > TTI_SHORT_PIECE) { continue; }
        n = tti_symbols(t, bytes, token->size, ids, &unknown);
        if (!unknown && tti_merge_short(t, ids, n) == 1 && ids[0] == (int32_t)i) {
            token->flags |= TTI_WHOLE;
        }
    }
}

/* ---- [tt:tokenizer.encode] from a piece to ids ----
 * Three ways, the cheapest first: the worker's cache, the dictionary if the piece is one token, merging. */

/* A text in parts, each with its own rule for special tokens, is encoded as one:
 * words go across the borders. */
/* Normal: end in the normalized section */
typedef struct tti_part { size_t end, normal; tt_special special; } tti_part;
typedef struct tti_encoder {
    const tt_tokenizer *t;
    tti_bpe_worker *w;
    const char *text, *section;      /* section: what is being encoded, in text */
    const char *begin;               /* the section as it is normalized         */
    tti_part *part, *last;           /* part: in which the section begins       */
    int quiet;                       /* 1: errors set no text                   */
    tt_ids *out;
} tti_encoder;

static tt_status tti_encode_push(const tti_encoder *e, const int32_t *ids, size_t n) {
    tt_ids *out = e->out;
    size_t i;
    if (n > out->capacity - out->size &&
        tti_worker_grow(e->w, &out->data, &out->capacity, out->size + n, sizeof *ids) != TT_OK) {
        return TT_ERR_MEM;
    }
    for (i = 0; i < n; i++) { out->data[out->size + i] = ids[i]; }
    out->size += n;
    return TT_OK;
}

/* The symbols, merged; into e->w->symbols, *n of them. */
static tt_status tti_encode_merge(const tti_encoder *e, const char *at, size_t size, size_t *n) {
    const tt_tokenizer *t = e->t;
    tti_bpe_worker *w = e->w;
    const char *unknown;
    if (tti_worker_grow(w, &w->symbols, &w->symbols_capacity, size, sizeof *w->symbols) != TT_OK) {
        return TT_ERR_MEM;
    }
    *n = tti_symbols(t, at, size, w->symbols, &unknown);
    if (unknown && t->refuse & TT_REFUSE_BYTES) {
        size_t offset = (size_t)((e->section == e->text ? unknown : e->section) - e->text);
        if (e->quiet) { return TT_ERR_ARG; }
        return tt_fail(t->ctx, TT_ERR_ARG,
                       "tt_encode: byte 0x%02X at offset %lu has no token in this tokenizer",
                       (unsigned)(unsigned char)*unknown, (unsigned long)offset);
    }
    if (*n > TTI_SHORT_PIECE) { return tti_merge_long(t, w, w->symbols, n); }
    *n = tti_merge_short(t, w->symbols, *n);
    return TT_OK;
}

/* Up to 24 bytes as three words, zeros behind them. `end`: of the memory that may be read. On little-endian
 * machines three loads and a mask, since a copy of unknown length costs more than the whole search. */
static void tti_piece_words(const char *at, size_t size, const char *end, uint64_t words[3]) {
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (end - at >= TTI_CACHED_BYTES) {
        size_t full = size / 8, rest = size % 8;
        memcpy(words, at, TTI_CACHED_BYTES);
        if (full < 3) { words[full] &= ((uint64_t)1 << 8 * rest) - 1; }
        if (full < 2) { words[2] = 0; }
        if (full < 1) { words[1] = 0; }
        return;
    }
#endif
    (void)end;
    memset(words, 0, TTI_CACHED_BYTES);
    memcpy(words, at, size);
}

/* The entry where such a piece is, if it is cached. The multipliers are odd numbers with bits all over (2^64
 * / golden ratio and two primes): the upper bits of a product depend on all bits below, and these are the
 * ones that choose the entry. */
static tti_cached *tti_cache_entry(const tti_bpe_worker *w, const uint64_t words[3], size_t size) {
    const uint64_t second = 0x9E3779B97F4A7C15u, third = 0xC2B2AE3D27D4EB4Fu, mix = 0xD6E8FEB86659FD93u;
    uint64_t hash = (words[0] ^ (words[1] * second) ^ (words[2] * third) ^ size) * mix;
    hash = (hash ^ (hash >> 32)) * mix;
    return &w->cache[hash >> (64 - TTI_CACHE_BITS)];
}

static int tti_cache_holds(const tti_cached *entry, const uint64_t words[3], size_t size) {
    return entry->size == (int32_t)size && entry->words[0] == words[0] && entry->words[1] == words[1] &&
           entry->words[2] == words[2];
}

/* The ids of a piece that is not cached: *ids, which lie in *whole or in the worker's symbols. */
static tt_status tti_piece_ids(const tti_encoder *e, const char *at, size_t size, int32_t *whole,
                               const int32_t **ids, size_t *n) {
    const tti_word *word = tti_dict_find(&e->t->vocab, at, size);
    tt_status status;
    if (word && e->t->tokens[word->value].flags & TTI_WHOLE) {
        *whole = (int32_t)word->value;
        *ids = whole;
        *n = 1;
        return TT_OK;
    }
    status = tti_encode_merge(e, at, size, n);
    *ids = e->w->symbols;
    return status;
}

/* Words come again and again: a short piece is looked up among those that this thread has merged before; a
 * new one takes the place of an old one there. */
static tt_status tti_encode_piece(const tti_encoder *e, const char *at, size_t size, const char *end) {
    tti_cached *entry = NULL;
    uint64_t words[3];
    const int32_t *ids;
    size_t n;
    int32_t whole;
    tt_status status;
    if (size <= TTI_CACHED_BYTES) {
        tti_piece_words(at, size, end, words);
        entry = tti_cache_entry(e->w, words, size);
        if (tti_cache_holds(entry, words, size)) { return tti_encode_push(e, entry->ids, (size_t)entry->n); }
    }
    status = tti_piece_ids(e, at, size, &whole, &ids, &n);
    if (status != TT_OK) { return status; }
    if (entry && n <= TTI_CACHED_IDS) {
        memcpy(entry->words, words, sizeof words);
        entry->size = (int32_t)size;
        entry->n = (int32_t)n;
        memcpy(entry->ids, ids, n * sizeof *ids);
    }
    return tti_encode_push(e, ids, n);
}

/* ---- [tt:tokenizer.section] from a text to pieces ----
 * text -> added tokens of the raw text and sections between them -> each section normalized -> "normalized"
 * added tokens and what is between them -> pieces. */

/* The text with U+2581 for each space and, if wanted, before it; in the worker's memory. */
static tt_status tti_mark_spaces(tti_bpe_worker *w, int prepend, const char **at, const char **end) {
    tti_bytes *out = &w->prefixed;
    tt_status status;
    const char *p;
    out->size = 0;
    TTI_TRY(tti_bytes_append(w, out, TTI_SPACE_MARK, prepend ? 3 : 0));
    for (p = *at; p < *end;) {
        const char *space = (const char *)memchr(p, ' ', (size_t)(*end - p));
        if (!space) { space = *end; }
        TTI_TRY(tti_bytes_append(w, out, p, (size_t)(space - p)));
        TTI_TRY(tti_bytes_append(w, out, TTI_SPACE_MARK, space < *end ? 3 : 0));
        p = space + 1;
    }
    *at = out->data;
    *end = out->data + out->size;
done:
    return status;
}

/* Whether Metaspace puts a mark before [at, end). */
static int tti_metaspace_prepends(const tti_encoder *e, const char *at, const char *end) {
    if (*at == ' ' || tti_mark_at(at, end)) { return 0; }
    if (e->t->characters == TTI_MARKS_FIRST) { return e->section == e->text && at == e->begin; }
    return e->t->characters == TTI_MARKS_ALWAYS;
}

/* Text without added tokens. */
static tt_status tti_encode_pieces(const tti_encoder *e, const char *at, const char *end) {
    const tt_tokenizer *t = e->t;
    tti_bytes *prefixed = &e->w->prefixed;
    tti_scanner scanner;
    tt_status status = TT_OK;
    if (t->characters >= TTI_MARKS_ALWAYS) {
        TTI_TRY(tti_mark_spaces(e->w, tti_metaspace_prepends(e, at, end), &at, &end));
    }
    if (t->prefix_space && *at != ' ') {
        prefixed->size = 0;
        TTI_TRY(tti_bytes_append(e->w, prefixed, " ", 1));
        TTI_TRY(tti_bytes_append(e->w, prefixed, at, (size_t)(end - at)));
        at = prefixed->data;
        end = at + prefixed->size;
    }
    scanner = tti_scanner_make(&t->unicode, end);
    while (at < end) {
        const char *stop = tti_piece(t->pretokenizer, &scanner, at);
        TTI_TRY(tti_encode_piece(e, at, (size_t)(stop - at), end));
        at = stop;
    }
done:
    return status;
}

/* The text as the file's normalizer gives it, in *at and *end: the text itself, or in the worker's memory. */
static tt_status tti_normalize(const tt_tokenizer *t, tti_bpe_worker *w, const char **at, const char **end) {
    tt_status status = TT_OK;
    w->normal.size = 0;
    if (t->nfc) { TTI_TRY(tti_nfc(&t->unicode, w, *at, *end, &w->normal)); }
    if (w->normal.size > 0) {
        *at = w->normal.data;
        *end = w->normal.data + w->normal.size;
    }
    if (t->characters == TTI_MARKS_NORMALIZER && *at < *end) { return tti_mark_spaces(w, 1, at, end); }
done:
    return status;
}

/* The branch below `at` for a byte; 0, which is never a child, if there is none. Roots have a table of all
 * bytes. */
static int32_t tti_branch_child(const tt_tokenizer *t, int32_t at, char byte) {
    int32_t k;
    if (at < 2) { return t->roots[at][(unsigned char)byte]; }
    k = t->branches[at].child;
    while (k && t->branches[k].byte != (unsigned char)byte) { k = t->branches[k].sibling; }
    return k;
}

static tt_status tti_branch_grow(tt_tokenizer *t, size_t n) {
    if (n > (size_t)INT32_MAX) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: added_tokens have more than 2^31 bytes");
    }
    if (tti_grow_array(t->ctx, &t->branches, &t->branches_capacity, n, sizeof *t->branches) != TT_OK) {
        return TT_ERR_MEM;
    }
    for (; t->n_branches < n; t->n_branches++) { t->branches[t->n_branches].id = -1; }
    return TT_OK;
}

/* Enters the bytes under which an added token is found, the last first; of equal ones the first stays. */
static tt_status tti_branch_add(tt_tokenizer *t, int level, const char *bytes, size_t size, int32_t id) {
    int32_t at = level, child;
    tt_status status = TT_OK;
    size_t i;
    for (i = size; i-- > 0; at = child) {
        child = tti_branch_child(t, at, bytes[i]);
        if (child) { continue; }
        child = (int32_t)t->n_branches;
        TTI_TRY(tti_branch_grow(t, t->n_branches + 1));
        t->branches[child].byte = (unsigned char)bytes[i];
        t->branches[child].sibling = t->branches[at].child;
        t->branches[at].child = child;
        if (at == level) { t->roots[level][(unsigned char)bytes[i]] = child; }
    }
    if (t->branches[at].id < 0) {
        t->branches[at].id = id;
        t->branches[at].size = (int32_t)size;
    }
done:
    return status;
}

/* Sets each branch's fail, and its token to the one of fail if it ends none itself. Breadth first, so that
 * what a branch falls back to is known before its children ask. */
static tt_status tti_branches_link(tt_tokenizer *t) {
    int32_t *queue = (int32_t *)tt_alloc(t->ctx, t->n_branches, sizeof *queue), at, child;
    tti_branch *branches = t->branches;
    size_t n = 2, i;
    if (!queue) { return TT_ERR_MEM; }
    branches[1].fail = 1;
    queue[1] = 1;
    for (i = 0; i < n; i++) {
        at = queue[i];
        for (child = branches[at].child; child; child = branches[child].sibling) {
            tti_branch *b = &branches[child];
            int32_t fail = branches[at].fail, next = 0;
            while (at > 1 && !(next = tti_branch_child(t, fail, (char)b->byte)) && fail > 1) {
                fail = branches[fail].fail;
            }
            b->fail = next ? next : fail;
            if (b->id < 0) {
                b->id = branches[b->fail].id;
                b->size = branches[b->fail].size;
            }
            queue[n++] = child;
        }
    }
    tt_free(t->ctx, queue, t->n_branches, sizeof *queue);
    return TT_OK;
}

/* The tree of added tokens, when normalizer and tokens are known: a "normalized" token is looked for as the
 * normalizer writes it. */
static tt_status tti_added_index(tt_tokenizer *t) {
    tt_status status;
    size_t i;
    TTI_TRY(tti_branch_grow(t, 2));
    for (i = 0; i < t->n_tokens; i++) {
        const tti_token *token = &t->tokens[i];
        const char *at = tti_token_bytes(t, token), *end = at + token->size;
        int normalized = (token->flags & TTI_NORMALIZED) != 0;
        if (!(token->flags & TTI_ADDED)) { continue; }
        if (normalized) { TTI_TRY(tti_normalize(t, &t->workers[0], &at, &end)); }
        TTI_TRY(tti_branch_add(t, normalized, at, (size_t)(end - at), (int32_t)i));
    }
    status = tti_branches_link(t);
done:
    return status;
}

/* Puts the longest added token at each place of [begin, end) where one begins on the worker's pile, the first
 * one on top. Read from its end, the text needs no place twice, however long the tokens are. */
static tt_status tti_find_added(const tt_tokenizer *t, tti_bpe_worker *w, int level, const char *begin,
                                const char *end) {
    const int32_t *roots = t->roots[level];
    int32_t branch = level, next;
    tti_found *found;
    size_t at;
    for (at = (size_t)(end - begin); at-- > 0;) {
        while (!(next = tti_branch_child(t, branch, begin[at])) && branch != level) {
            branch = t->branches[branch].fail;
        }
        if (!next) {
            while (at > 0 && !roots[(unsigned char)begin[at - 1]]) { at--; }
            continue;
        }
        branch = next;
        if (t->branches[branch].id < 0) { continue; }
        if (tti_worker_grow(w, &w->found, &w->found_capacity, w->n_found + 1, sizeof *w->found) != TT_OK) {
            return TT_ERR_MEM;
        }
        found = &w->found[w->n_found++];
        found->at = at;
        found->id = t->branches[branch].id;
        found->size = t->branches[branch].size;
    }
    return TT_OK;
}

/* "single_word": neither before nor behind [at, stop) stands a character of a word. */
static int tti_stands_alone(const tti_unicode *u, const char *begin, const char *at, const char *stop,
                            const char *end) {
    uint32_t c;
    if (at > begin) {
        tti_utf8_before(begin, at, &c);
        if (tti_is_word(u, c)) { return 0; }
    }
    if (stop < end) {
        tti_utf8(stop, end, &c);
        if (tti_is_word(u, c)) { return 0; }
    }
    return 1;
}

/* What a special token at [start, *stop) is by the part in which it lies. Across a border it is text, and the
 * search goes on at the border: no part hides a token of another. */
static tt_special tti_special_at(const tti_encoder *e, int level, const char *start, const char **stop) {
    const char *origin = level == 0 ? e->text : e->begin;
    size_t from = (size_t)(start - origin), to = (size_t)(*stop - origin), end;
    const tti_part *part = e->part;
    while (part < e->last && (level == 0 ? part->end : part->normal) <= from) { part++; }
    end = level == 0 ? part->end : part->normal;
    if (part == e->last || to <= end) { return part->special; }
    *stop = origin + end;
    return TT_SPECIAL_TEXT;
}

/* White space before `at`, behind `begin`, and behind `at`: where it begins and ends. */
static const char *tti_white_before(const char *begin, const char *at) {
    uint32_t c;
    const char *p;
    while (at > begin && (p = tti_utf8_before(begin, at, &c), tti_is_white(c))) { at = p; }
    return at;
}

static const char *tti_white_behind(const char *at, const char *end) {
    uint32_t c;
    size_t n;
    while (at < end && (n = tti_utf8(at, end, &c), tti_is_white(c))) { at += n; }
    return at;
}

static tt_status tti_encode_section(tti_encoder *e, const char *begin, const char *end, int level);

/* Cuts the added tokens of this level out of [begin, end). As in Hugging Face, a token that is found and not
 * taken (text, or part of a word) still ends the search for others inside it: at. from: what is not encoded
 * yet. */
static tt_status tti_encode_level(tti_encoder *e, const char *begin, const char *end, int level) {
    const tt_tokenizer *t = e->t;
    const char *at = begin, *from = begin;
    size_t below = e->w->n_found;
    tt_status status;
    TTI_TRY(tti_find_added(t, e->w, level, begin, end));
    while (e->w->n_found > below) {
        tti_found f = e->w->found[--e->w->n_found];
        const char *start = begin + f.at, *stop = start + f.size;
        int flags = t->tokens[f.id].flags;
        tt_special special = TT_SPECIAL_PARSE;
        if (start < at) { continue; }
        at = stop;
        if (flags & TTI_SPECIAL) { special = tti_special_at(e, level, start, &at); }
        if (special == TT_SPECIAL_TEXT) { continue; }
        if (flags & TTI_SINGLE && !tti_stands_alone(&t->unicode, begin, start, stop, end)) { continue; }
        if (special == TT_SPECIAL_REFUSE) {
            const char *where = level == 0 ? start : e->section;
            if (e->quiet) { return TT_ERR_ARG; }
            return tt_fail(
                t->ctx, TT_ERR_ARG,
                "tt_encode: special token %.*s at offset %lu, expected text without special tokens",
                f.size < 200 ? (int)f.size : 200, tti_token_bytes(t, &t->tokens[f.id]),
                (unsigned long)(where - e->text));
        }
        if (flags & TTI_LSTRIP) { start = tti_white_before(begin, start); }
        if (start < from) { start = from; }
        if (flags & TTI_RSTRIP) { stop = tti_white_behind(stop, end); }
        if (from < start) { TTI_TRY(tti_encode_section(e, from, start, level)); }
        TTI_TRY(tti_encode_push(e, &f.id, 1));
        from = stop;
    }
    if (from < end) { status = tti_encode_section(e, from, end, level); }
done:
    return status;
}

/* Finds the part in which the section begins, and where parts end in it as it is normalized. */
static tt_status tti_part_borders(tti_encoder *e, const char *begin, const char *end) {
    tt_status status = TT_OK;
    tti_part *part;
    while (e->part < e->last && e->text + e->part->end <= begin) { e->part++; }
    for (part = e->part; part < e->last && e->text + part->end < end; part++) {
        const char *at = begin, *stop = e->text + part->end;
        TTI_TRY(tti_normalize(e->t, e->w, &at, &stop));
        part->normal = (size_t)(stop - at);
    }
    part->normal = (size_t)-1;
done:
    return status;
}

/* Level 0: raw text between added tokens, which is normalized and searched for the "normalized" ones. Level
 * 1: what is between those. */
static tt_status tti_encode_section(tti_encoder *e, const char *begin, const char *end, int level) {
    tt_status status;
    if (level == 1) { return tti_encode_pieces(e, begin, end); }
    e->section = begin;
    TTI_TRY(tti_part_borders(e, begin, end));
    TTI_TRY(tti_normalize(e->t, e->w, &begin, &end));
    e->begin = begin;
    status = tti_encode_level(e, begin, end, 1);
done:
    return status;
}

static tti_encoder tti_encoder_make(const tt_tokenizer *t, tti_bpe_worker *w, int quiet, tt_ids *out) {
    tti_encoder e;
    memset(&e, 0, sizeof e);
    e.t = t;
    e.w = w;
    e.quiet = quiet;
    e.out = out;
    return e;
}

/* n >= 1 parts, the last of which ends where the text does. On failure out is as before. */
static tt_status tti_encode_parts(tti_encoder *e, const char *text, size_t size, tti_part *parts, size_t n) {
    const tt_tokenizer *t = e->t;
    tti_bpe_worker *w = e->w;
    size_t before = e->out->size, n_cache = 0;
    const char *invalid;
    tt_status status = TT_OK;
    e->text = e->section = e->begin = text;
    e->part = parts;
    e->last = parts + (n - 1);
    if (size >= (size_t)INT32_MAX / 4) {
        if (e->quiet) { return TT_ERR_ARG; }
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: size is %lu, expected less than 2^29",
                       (unsigned long)size);
    }
    invalid = t->refuse & TT_REFUSE_UTF8 ? tti_utf8_invalid(text, text + size) : text + size;
    if (invalid < text + size) {
        if (e->quiet) { return TT_ERR_ARG; }
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: byte 0x%02X at offset %lu is no valid UTF-8",
                       (unsigned)(unsigned char)*invalid, (unsigned long)(invalid - text));
    }
    if (size == 0) { return TT_OK; }
    if (!w->cache) { TTI_TRY(tti_worker_grow(w, &w->cache, &n_cache, TTI_CACHE_SIZE, sizeof *w->cache)); }
    w->n_found = 0;
    status = tti_encode_level(e, text, text + size, 0);
done:
    if (status != TT_OK) { e->out->size = before; }
    return status;
}

static tt_status tti_encode_text(tti_encoder *e, const char *text, size_t size, tt_special special) {
    tti_part all;
    all.end = size;
    all.special = special;
    return tti_encode_parts(e, text, size, &all, 1);
}

static tt_status tti_special_check(const tt_tokenizer *t, tt_special special) {
    if ((int)special >= 0 && special <= TT_SPECIAL_REFUSE) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: special is %d, expected a tt_special", (int)special);
}

TT_API tt_status tt_encode(const tt_tokenizer *t, const char *text, size_t size, tt_special special,
                           tt_ids *out) {
    tti_encoder e = tti_encoder_make(t, &t->workers[0], 0, out);
    tt_status status = tti_special_check(t, special);
    return status == TT_OK ? tti_encode_text(&e, text, size, special) : status;
}

TT_API tt_status tt_encode_document(const tt_tokenizer *t, const char *text, size_t size, tt_special special,
                                    tt_ids *out) {
    size_t before = out->size;
    tt_status status;
    TTI_TRY(tt_ids_append(out, t->before, (size_t)t->n_before));
    TTI_TRY(tt_encode(t, text, size, special, out));
    status = tt_ids_append(out, t->after, (size_t)t->n_after);
done:
    if (status != TT_OK) { out->size = before; }
    return status;
}

/* ---- [tt:tokenizer.batch] many texts on all threads ----
 * Each text's ids lie in the memory of the worker that encoded it until all are done. Sixteen texts are one
 * job, so that handing jobs out is little beside even short texts. */
#define TTI_BATCH_TEXTS 16
typedef struct tti_batch_part { size_t begin, n; int worker; tt_status status; } tti_batch_part;
typedef struct tti_text_batch {
    const tt_tokenizer *t;
    const tt_span *texts;
    size_t n;
    tt_special special;
    tti_batch_part *parts;
} tti_text_batch;

static void tti_encode_texts(void *user, int part, int worker) {
    const tti_text_batch *b = (const tti_text_batch *)user;
    tti_bpe_worker *w = &b->t->workers[worker];
    size_t i = (size_t)part * TTI_BATCH_TEXTS, end = i + TTI_BATCH_TEXTS < b->n ? i + TTI_BATCH_TEXTS : b->n;
    for (; i < end; i++) {
        tti_encoder e = tti_encoder_make(b->t, w, 1, &w->ids);
        tti_batch_part *p = &b->parts[i];
        p->worker = worker;
        p->begin = w->ids.size;
        p->status = tti_encode_text(&e, b->texts[i].data, b->texts[i].size, b->special);
        p->n = w->ids.size - p->begin;
    }
}

TT_API tt_status tt_encode_batch(const tt_tokenizer *t, const tt_span *texts, size_t n, tt_special special,
                                 tt_ids *out, size_t *offsets) {
    tti_text_batch batch;
    tti_batch_part *parts;
    tt_status status = tti_special_check(t, special);
    size_t before = out->size, i = 0;
    int k;
    if (status != TT_OK) { return status; }
    parts = (tti_batch_part *)tt_alloc(t->ctx, n, sizeof *parts);
    if (!parts) { return TT_ERR_MEM; }
    batch.t = t;
    batch.texts = texts;
    batch.n = n;
    batch.special = special;
    batch.parts = parts;
    TTI_TRY(
        tti_parallel(t->ctx, tti_encode_texts, &batch, (int)((n + TTI_BATCH_TEXTS - 1) / TTI_BATCH_TEXTS)));
    for (i = 0; i < n; i++) {
        const tti_batch_part *p = &parts[i];
        offsets[i] = out->size;
        if (p->status == TT_OK) {
            TTI_TRY(tt_ids_append(out, t->workers[p->worker].ids.data + p->begin, p->n));
        } else {                                     /* again, for the sentence about the error */
            TTI_TRY(tt_encode(t, texts[i].data, texts[i].size, special, out));
        }
    }
    offsets[n] = out->size;
done:
    if (status != TT_OK) { out->size = before; }
    for (k = 0; k < t->n_workers; k++) { tt_ids_free(&t->workers[k].ids); }
    tt_free(t->ctx, parts, n, sizeof *parts);
    return status;
}

/* ---- [tt:tokenizer.decode] from ids to text ---- */
#define TTI_REPLACEMENT "\xEF\xBF\xBD"      /* U+FFFD, for an id without a token */

/* Takes what was appended since `size` off again. */
static void tti_text_cut(tt_text *text, size_t size) {
    if (!text->data) { return; }
    text->size = size;
    text->data[size] = 0;
}

/* Appends the bytes of one token. place: of the id, for the sentence about an error. */
static tt_status tti_decode_one(const tt_tokenizer *t, int32_t id, size_t place, int skip_special,
                                tt_text *out) {
    const tti_token *token = id >= 0 && (size_t)id < t->n_tokens ? &t->tokens[id] : NULL;
    const char *bytes, *end;
    tt_status status = TT_OK;
    if (id < 0) {
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_decode: ids[%lu] is %ld, expected a token id, which is >= 0",
                       (unsigned long)place, (long)id);
    }
    if (!token || !(token->flags & TTI_USED)) { return tt_text_append(out, TTI_REPLACEMENT, 3); }
    if (skip_special && token->flags & TTI_SPECIAL) { return TT_OK; }
    bytes = tti_token_bytes(t, token);
    end = bytes + token->size;
    if (token->flags & TTI_NORMALIZED) {             /* what was found in the text */
        TTI_TRY(tti_normalize(t, &t->workers[0], &bytes, &end));
    }
    if (!t->characters) { return tt_text_append(out, bytes, (size_t)(end - bytes)); }
    if (token->flags & TTI_BYTE) {
        char byte = (char)(tti_hex(bytes[3]) * 16 + tti_hex(bytes[4]));       /* <0x41> */
        return tt_text_append(out, &byte, 1);
    }
    while (bytes < end) {
        int mark = tti_mark_at(bytes, end);
        uint32_t c;
        size_t size = mark ? 3 : tti_utf8(bytes, end, &c);
        TTI_TRY(mark ? tt_text_append(out, " ", 1) : tt_text_append(out, bytes, size));
        bytes += size;
    }
done:
    return status;
}

/* Takes the space off that SentencePiece's kind puts before a text. */
static void tti_decode_strip(const tt_tokenizer *t, tt_text *out, size_t begin) {
    if (!t->strip || out->size == begin || out->data[begin] != ' ') { return; }
    memmove(out->data + begin, out->data + begin + 1, out->size - begin);
    out->size--;
}

TT_API tt_status tt_decode(const tt_tokenizer *t, const int32_t *ids, size_t n, int skip_special,
                           tt_text *out) {
    size_t before = out->size, i;
    tt_status status;
    TTI_TRY(tt_text_append(out, "", 0));
    for (i = 0; i < n; i++) { TTI_TRY(tti_decode_one(t, ids[i], i, skip_special, out)); }
    tti_decode_strip(t, out, before);
done:
    if (status != TT_OK) { tti_text_cut(out, before); }
    return status;
}

TT_API tt_status tt_decoder_push(tt_decoder *d, int32_t id, tt_text *out) {
    size_t before = out->size, open;
    tt_status status;
    TTI_TRY(tt_text_append(out, d->held, (size_t)d->n_held));
    TTI_TRY(tti_decode_one(d->tokenizer, id, 0, d->skip_special, out));
    if (!d->started && out->size > before) {
        d->started = 1;
        tti_decode_strip(d->tokenizer, out, before);
    }
    open = tti_utf8_open(out->data + before, out->data + out->size);
    d->n_held = (int)open;
    memcpy(d->held, out->data + out->size - open, open);
    tti_text_cut(out, out->size - open);
done:
    if (status != TT_OK) { tti_text_cut(out, before); }
    return status;
}

TT_API tt_status tt_decoder_end(tt_decoder *d, tt_text *out) {
    tt_status status = tt_text_append(out, d->held, (size_t)d->n_held);
    if (status == TT_OK) { d->started = d->n_held = 0; }
    return status;
}

/* ---- [tt:tokenizer.read] reading tokenizer.json ----
 * What a file asks for and is not done here is an error that names it. The order of the steps matters: the
 * normalizer tells SentencePiece's kind from bytes, and the model needs to know the added tokens. */

static int tti_node_is(const tt_json *node, const char *text) {
    size_t size = strlen(text);
    return node && node->type == TT_JSON_STRING && node->length == size &&
           memcmp(node->string, text, size) == 0;
}

static int tti_member_is(const tt_json *object, const char *key, const char *text) {
    return tti_node_is(tt_json_get(object, key), text);
}

static int tti_type_is(const tt_json *object, const char *type) {
    return tti_member_is(object, "type", type);
}

static int tti_member_null(const tt_json *object, const char *key) {
    const tt_json *node = tt_json_get(object, key);
    return !node || node->type == TT_JSON_NULL;
}

/* The first element of an array, NULL if it is none or empty. */
static const tt_json *tti_elements(const tt_json *node) {
    return node && node->type == TT_JSON_ARRAY ? node->child : NULL;
}

/* What a member is, for an error text. */
static const char *tti_member_shown(const tt_json *object, const char *key) {
    static const char *const kinds[] = {"null", "a bool", "a number", "a string", "an array", "an object"};
    const tt_json *node = tt_json_get(object, key);
    if (!node) { return "missing"; }
    if (node->type == TT_JSON_BOOL) { return node->number != 0 ? "true" : "false"; }
    if (node->type == TT_JSON_OBJECT) { return tt_json_text(node, "type", "an object"); }
    return node->type == TT_JSON_STRING ? node->string : kinds[node->type];
}

/* What object[key] has to be: an error that says what it is instead, unless it is `good`. what: where the
 * object stands. */
static tt_status tti_expect(const tt_tokenizer *t, int good, const char *what, const tt_json *object,
                            const char *key, const char *expected) {
    if (good) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: %s%s is %.200s, expected %s", what, key,
                   tti_member_shown(object, key), expected);
}

/* Elements of a Sequence, or the one thing itself, as a list: steps_next calls them
 * in turn. NULL at the end. */
static const tt_json *tti_steps(const tt_json *node, const char *key) {
    const tt_json *list = tti_type_is(node, "Sequence") ? tt_json_get(node, key) : NULL;
    return !node || node->type != TT_JSON_OBJECT ? NULL : list ? list->child : node;
}

static const tt_json *tti_steps_next(const tt_json *whole, const tt_json *element) {
    return element == whole ? NULL : element->next;
}

/* A step that is not done here: its type if it stands in a Sequence, else the member of the root. */
static tt_status tti_step_unknown(const tt_tokenizer *t, const tt_json *root, const char *key,
                                  const tt_json *step, const char *expected) {
    char what[64];
    if (!step || step == tt_json_get(root, key)) { return tti_expect(t, 0, "", root, key, expected); }
    snprintf(what, sizeof what, "%s Sequence: ", key);
    return tti_expect(t, 0, what, step, "type", expected);
}

/* A whole number that is a token's id. */
static tt_status tti_read_id(tt_context *ctx, const tt_json *node, const char *what, int32_t *id) {
    double number = node && node->type == TT_JSON_NUMBER ? node->number : -1;
    if (!(number >= 0 && number < TTI_MAX_VOCAB) || number != (double)(int32_t)number) {
        return tt_fail(ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: %s is %.17g, expected a whole number from 0 to %d", what, number,
                       TTI_MAX_VOCAB - 1);
    }
    *id = (int32_t)number;
    return TT_OK;
}

/* An added token is found in a text before any merge; its flags say which blanks it takes along and whether
 * it may be a part of a word. */
static tt_status tti_read_added(tt_tokenizer *t, const tt_json *token) {
    static const char *const keys[] = {"special", "normalized", "lstrip", "rstrip", "single_word"};
    static const int flags[] = {TTI_SPECIAL, TTI_NORMALIZED, TTI_LSTRIP, TTI_RSTRIP, TTI_SINGLE};
    const tt_json *content = tt_json_get(token, "content");
    int set = TTI_ADDED, good = content && content->type == TT_JSON_STRING && content->length > 0;
    int32_t id = 0;
    tt_status status;
    size_t i;
    TTI_TRY(tti_expect(t, good, "added_tokens: ", token, "content", "a string that is not empty"));
    TTI_TRY(tti_read_id(t->ctx, tt_json_get(token, "id"), "added_tokens: id", &id));
    for (i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (tt_json_number(token, keys[i], 0) != 0) { set |= flags[i]; }
    }
    if (tti_dict_find(&t->added, content->string, content->length) || tti_id_taken(t, id)) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: added token %.200s or its id %ld occurs twice", content->string,
                       (long)id);
    }
    status = tti_token_add(t, id, content->string, content->length, set);
done:
    return status;
}

/* What a token is as the model writes it: bytes in GPT-2's mapping, or characters. */
static tt_status tti_read_key(const tt_tokenizer *t, const char *key, size_t size, tt_text *bytes,
                              int *valid) {
    if (!t->characters) { return tti_key_to_bytes(key, size, bytes, valid); }
    bytes->size = 0;
    *valid = 1;
    return tt_text_append(bytes, key, size);
}

/* An entry of the vocabulary, which may be an added token too; then merges may name it. */
static tt_status tti_read_token(tt_tokenizer *t, const tt_json *node, tt_text *bytes) {
    const tti_word *added = tti_dict_find(&t->added, node->key, node->key_length);
    int32_t id = 0;
    int valid, known, byte;
    tt_status status;
    TTI_TRY(tti_read_id(t->ctx, node, "model.vocab: id", &id));
    if (added ? added->value != id : tti_id_taken(t, id)) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: token %.200s and another one want the id %ld", node->key,
                       (long)id);
    }
    TTI_TRY(tti_read_key(t, node->key, node->key_length, bytes, &valid));
    known = valid && tti_dict_find(&t->vocab, bytes->data, bytes->size) != NULL;
    if (added) {
        t->tokens[id].flags |= TTI_IN_MODEL;
        if (!valid || bytes->size == 0 || known) { return TT_OK; }
        return tti_dict_add(&t->vocab, bytes->data, bytes->size, id) ? TT_OK : TT_ERR_MEM;
    }
    if (!valid || bytes->size == 0 || known) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: token \"%.200s\" with id %ld is %s",
                       node->key, (long)id,
                       !valid             ? "not written in GPT-2's byte characters"
                       : bytes->size == 0 ? "empty"
                                          : "there twice");
    }
    byte = t->characters && tti_is_byte_name(bytes->data, bytes->size);
    status = tti_token_add(t, id, bytes->data, bytes->size, TTI_IN_MODEL | (byte ? TTI_BYTE : 0));
done:
    return status;
}

/* The id of one side of a merge; its bytes are appended to `joined`. */
static tt_status tti_read_side(tt_tokenizer *t, const char *key, size_t size, tt_text *bytes, tt_text *joined,
                               int32_t *id) {
    const tti_word *word;
    int valid;
    if (tti_read_key(t, key, size, bytes, &valid) != TT_OK) { return TT_ERR_MEM; }
    word = valid ? tti_dict_find(&t->vocab, bytes->data, bytes->size) : NULL;
    if (!word) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: merge %lu names \"%.*s\", which is not in the vocabulary",
                       (unsigned long)t->n_merges, (int)(size < 200 ? size : 200), key);
    }
    *id = (int32_t)word->value;
    return tt_text_append(joined, bytes->data, bytes->size);
}

/* "left right" or ["left", "right"]. Of equal pairs the last one counts, as in Hugging Face. */
static tt_status tti_read_merge(tt_tokenizer *t, const tt_json *node, tt_text *bytes, tt_text *joined) {
    const tt_json *a = node->type == TT_JSON_ARRAY && node->length == 2 ? node->child : NULL;
    const char *space =
        node->type == TT_JSON_STRING ? (const char *)memchr(node->string, ' ', node->length) : NULL;
    const tti_word *result;
    int32_t left = 0, right = 0;
    tt_status status;
    joined->size = 0;
    if (space) {
        size_t size = (size_t)(space - node->string);
        TTI_TRY(tti_read_side(t, node->string, size, bytes, joined, &left));
        TTI_TRY(tti_read_side(t, space + 1, node->length - size - 1, bytes, joined, &right));
    } else if (a && a->type == TT_JSON_STRING && a->next->type == TT_JSON_STRING) {
        TTI_TRY(tti_read_side(t, a->string, a->length, bytes, joined, &left));
        TTI_TRY(tti_read_side(t, a->next->string, a->next->length, bytes, joined, &right));
    } else {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: merge %lu is neither \"left right\" nor [\"left\", \"right\"]",
                       (unsigned long)t->n_merges);
    }
    result = tti_dict_find(&t->vocab, joined->data, joined->size);
    if (!result) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: merge %lu gives a token that is not in the vocabulary",
                       (unsigned long)t->n_merges);
    }
    status = tti_merge_add(t, left, right, (int32_t)result->value);
done:
    return status;
}

/* Whether a token that merges give has a mark U+2581 behind another character: then pieces may not end at
 * marks. */
static int tti_marks_inside(const tt_tokenizer *t) {
    size_t i;
    for (i = 0; i < t->n_merges; i++) {
        const tti_token *token = &t->tokens[t->merges[i].result];
        const char *at = tti_token_bytes(t, token), *end = at + token->size;
        int other = 0;
        while (at < end) {
            int mark = tti_mark_at(at, end);
            if (mark && other) { return 1; }
            if (!mark) { other = 1; }
            at += mark ? 3 : 1;
        }
    }
    return 0;
}

/* The model's switches: what is not done here has to be off. */
static tt_status tti_read_model_fields(tt_tokenizer *t, const tt_json *model) {
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    static const char *const off[] = {"dropout", "fuse_unk", "byte_fallback"};
    const tt_json *vocab = tt_json_get(model, "vocab"), *merges = tt_json_get(model, "merges");
    int good = !tt_json_get(model, "type") || tti_type_is(model, "BPE");
    tt_status status;
    size_t i;
    TTI_TRY(tti_expect(t, good, "model.", model, "type", "BPE"));
    for (i = 0; i < 2; i++) {
        good = tti_member_null(model, empty[i]) || tti_member_is(model, empty[i], "");
        TTI_TRY(tti_expect(t, good, "model.", model, empty[i], "null"));
    }
    for (i = 0; i < (t->characters ? 1u : 3u); i++) {
        const tt_json *node = tt_json_get(model, off[i]);
        good = tti_member_null(model, off[i]) ||
               (node->number == 0 && (node->type == TT_JSON_BOOL || node->type == TT_JSON_NUMBER));
        TTI_TRY(tti_expect(t, good, "model.", model, off[i], "null or false"));
    }
    good = !t->characters || tt_json_number(model, "byte_fallback", 0) != 0;
    TTI_TRY(tti_expect(t, good, "model.", model, "byte_fallback", "true with this normalizer"));
    TTI_TRY(tti_expect(t, vocab && vocab->type == TT_JSON_OBJECT, "model.", model, "vocab", "an object"));
    TTI_TRY(tti_expect(t, merges && merges->type == TT_JSON_ARRAY, "model.", model, "merges", "an array"));
    t->ignore_merges = tt_json_number(model, "ignore_merges", 0) != 0;
done:
    return status;
}

/* Vocabulary, then merges, whose parts and whole must be in it. A text may hold any byte, so each of them
 * needs a token: <0x00> to <0xFF> with byte_fallback, else the printable characters that stand for bytes. */
static tt_status tti_read_model(tt_tokenizer *t, const tt_json *model) {
    tt_text bytes = TT_INIT, joined = TT_INIT;
    const tt_json *node;
    tt_status status;
    int i, no_unknown = tti_member_null(model, "unk_token");
    bytes.ctx = joined.ctx = t->ctx;
    TTI_TRY(tti_read_model_fields(t, model));
    for (node = tt_json_get(model, "vocab")->child; node; node = node->next) {
        TTI_TRY(tti_read_token(t, node, &bytes));
    }
    for (node = tti_elements(tt_json_get(model, "merges")); node; node = node->next) {
        TTI_TRY(tti_read_merge(t, node, &bytes, &joined));
    }
    tti_tokenizer_finish(t);
    for (i = 0; i < 256; i++) {
        if (t->byte_id[i] >= 0) { continue; }
        if (t->characters) {
            status = tt_fail(t->ctx, TT_ERR_FILE,
                             "tt_tokenizer_parse: model.vocab has no <0x%02X>, expected all 256 bytes "
                             "with byte_fallback",
                             (unsigned)i);
            goto done;
        }
        TTI_TRY(
            tti_expect(t, no_unknown, "model.", model, "unk_token", "null, as not every byte has a token"));
    }
    if (t->characters && t->pretokenizer != TTI_PRETOKENIZE_EACH_MARK) {
        int whole = t->ignore_merges || tti_marks_inside(t);
        t->pretokenizer = whole ? (int)TT_PRETOKENIZE_BYTES : TTI_PRETOKENIZE_MARKS;
    }
done:
    tt_text_free(&bytes);
    tt_text_free(&joined);
    return status;
}

/* Split by a known pattern, each piece on its own. */
static tt_status tti_read_split(tt_tokenizer *t, const tt_json *split) {
    const tt_json *pattern = tt_json_get(split, "pattern");
    int isolated = tti_member_is(split, "behavior", "Isolated") && tt_json_number(split, "invert", 0) == 0;
    size_t i;
    for (i = 0; i < TTI_N_PATTERNS; i++) {
        if (!isolated || !tti_member_is(pattern, "Regex", tti_patterns[i].pattern)) { continue; }
        t->pretokenizer = (int)tti_patterns[i].kind;
        return TT_OK;
    }
    return tt_fail(t->ctx, TT_ERR_FILE,
                   "tt_tokenizer_parse: pre_tokenizer Split by %.300s, behavior %.20s, expected "
                   "Isolated by a pattern of GPT-2, Llama 3, Qwen 2, cl100k, o200k or Mistral-Nemo",
                   tti_member_shown(pattern, "Regex"), tti_member_shown(split, "behavior"));
}

/* Metaspace of U+2581; "add_prefix_space" is an older field, which has to agree. */
static tt_status tti_read_metaspace(tt_tokenizer *t, const tt_json *root) {
    static const char what[] = "pre_tokenizer Metaspace.";
    const tt_json *pre = tt_json_get(root, "pre_tokenizer"), *scheme = tt_json_get(pre, "prepend_scheme");
    tt_status status;
    int k = 0, agrees;
    TTI_TRY(
        tti_expect(t, tti_member_is(pre, "replacement", TTI_SPACE_MARK), what, pre, "replacement", "U+2581"));
    while (scheme && k < 3 && !tti_node_is(scheme, tti_prepend_schemes[k])) { k++; }
    TTI_TRY(tti_expect(t, k < 3, what, pre, "prepend_scheme", "always, first or never"));
    agrees = k == 2 || tt_json_number(pre, "add_prefix_space", 1) != 0;
    TTI_TRY(tti_expect(t, agrees, what, pre, "add_prefix_space", "true with this prepend_scheme"));
    t->characters = (tti_marks)((int)TTI_MARKS_ALWAYS + k);
    if (tt_json_number(pre, "split", 1) != 0) { t->pretokenizer = TTI_PRETOKENIZE_EACH_MARK; }
done:
    return status;
}

/* ByteLevel alone, or behind a Split (then without its own pattern) or Digits (with it). */
static tt_status tti_read_pre_tokenizer(tt_tokenizer *t, const tt_json *root) {
    static const char first_is[] = "pre_tokenizer.pretokenizers[0].",
                      second_is[] = "pre_tokenizer.pretokenizers[1].";
    static const char expected[] = "ByteLevel, or Split or Digits and ByteLevel";
    const tt_json *pre = tt_json_get(root, "pre_tokenizer"), *last = tti_steps(pre, "pretokenizers"),
                  *first = NULL;
    int own_pattern, digits, agrees;
    tt_status status;
    TTI_TRY(tti_expect(t, last != NULL, "", root, "pre_tokenizer", expected));
    if (tti_steps_next(pre, last)) {
        first = last;
        last = first->next;
        TTI_TRY(tti_expect(t, !last->next, "pre_tokenizer.pretokenizers[2].", last->next, "type",
                           "two elements"));
    }
    digits = first && tti_type_is(first, "Digits");
    if (digits) {
        agrees = tt_json_number(first, "individual_digits", 0) != 0;
        TTI_TRY(tti_expect(t, agrees, "pre_tokenizer Digits.", first, "individual_digits", "true"));
        t->pretokenizer = TT_PRETOKENIZE_SMOLLM2;
    } else if (first) {
        TTI_TRY(tti_expect(t, tti_type_is(first, "Split"), first_is, first, "type", "Split or Digits"));
        TTI_TRY(tti_read_split(t, first));
    }
    if (last == pre) {
        TTI_TRY(tti_expect(t, tti_type_is(last, "ByteLevel"), "", root, "pre_tokenizer", expected));
    } else {
        TTI_TRY(tti_expect(t, tti_type_is(last, "ByteLevel"), second_is, last, "type", "ByteLevel"));
    }
    own_pattern = tt_json_number(last, "use_regex", 1) != 0;
    t->prefix_space = tt_json_number(last, "add_prefix_space", 1) != 0;
    TTI_TRY(tti_expect(t, !first || !t->prefix_space, second_is, last, "add_prefix_space", "false"));
    TTI_TRY(tti_expect(t, !first || own_pattern == digits, second_is, last, "use_regex",
                       digits ? "true" : "false"));
    if (!first) { t->pretokenizer = own_pattern ? TT_PRETOKENIZE_GPT2 : TT_PRETOKENIZE_BYTES; }
done:
    return status;
}

/* NFC, or SentencePiece's Prepend U+2581 and Replace " " by it, or nothing. */
static tt_status tti_read_normalizer(tt_tokenizer *t, const tt_json *root) {
    static const char expected[] = "null, NFC, or Prepend and Replace of U+2581";
    const tt_json *whole = tt_json_get(root, "normalizer"), *step;
    int prepend = 0, replace = 0;
    if (tti_member_null(root, "normalizer")) { return TT_OK; }
    for (step = tti_steps(whole, "normalizers"); step; step = tti_steps_next(whole, step)) {
        if (tti_type_is(step, "NFC") && !t->nfc && !prepend) {
            t->nfc = 1;
        } else if (tti_type_is(step, "Prepend") && tti_member_is(step, "prepend", TTI_SPACE_MARK) &&
                   !prepend) {
            prepend = 1;
        } else if (tti_type_is(step, "Replace") &&
                   tti_member_is(tt_json_get(step, "pattern"), "String", " ") &&
                   tti_member_is(step, "content", TTI_SPACE_MARK) && prepend && !replace) {
            replace = 1;
        } else {
            break;
        }
    }
    if (prepend) { t->characters = TTI_MARKS_NORMALIZER; }
    if (step || prepend != replace || whole->type != TT_JSON_OBJECT) {
        return tti_step_unknown(t, root, "normalizer", step, expected);
    }
    return t->nfc ? tti_unicode_fill(t->ctx, &t->unicode, 1) : TT_OK;
}

/* TemplateProcessing: ids before and after the text A. */
static tt_status tti_read_template(tt_tokenizer *t, const tt_json *step) {
    static const char what[] = "post_processor TemplateProcessing: ";
    const tt_json *tokens = tt_json_get(step, "special_tokens"), *item, *id;
    tt_status status = TT_OK;
    int text = 0;
    for (item = tti_elements(tt_json_get(step, "single")); item; item = item->next) {
        const char *name = tt_json_text(tt_json_get(item, "SpecialToken"), "id", NULL);
        const tt_json *ids = name ? tt_json_get(tt_json_get(tokens, name), "ids") : NULL;
        if (tt_json_get(item, "Sequence")) {
            text++;
            continue;
        }
        for (id = tti_elements(ids); id; id = id->next) {
            int32_t *to = text ? t->after : t->before;
            int *n = text ? &t->n_after : &t->n_before;
            if (*n == TTI_MAX_TEMPLATE) {
                return tt_fail(t->ctx, TT_ERR_FILE,
                               "tt_tokenizer_parse: post_processor has more than %d tokens on a side",
                               TTI_MAX_TEMPLATE);
            }
            TTI_TRY(tti_read_id(t->ctx, id, "post_processor: id", &to[(*n)++]));
        }
        TTI_TRY(tti_expect(t, ids != NULL, what, item, "SpecialToken", "a token of special_tokens"));
    }
    status = tti_expect(t, text == 1, what, step, "single", "an array with one Sequence");
done:
    return status;
}

/* ByteLevel, which changes offsets only, and at most one TemplateProcessing. */
static tt_status tti_read_post_processor(tt_tokenizer *t, const tt_json *root) {
    static const char expected[] = "null, ByteLevel or TemplateProcessing";
    const tt_json *whole = tt_json_get(root, "post_processor"), *step;
    tt_status status = TT_OK;
    int template_seen = 0;
    if (tti_member_null(root, "post_processor")) { return TT_OK; }
    TTI_TRY(tti_expect(t, whole->type == TT_JSON_OBJECT, "", root, "post_processor", expected));
    for (step = tti_steps(whole, "processors"); step; step = tti_steps_next(whole, step)) {
        if (tti_type_is(step, "ByteLevel")) { continue; }
        if (!tti_type_is(step, "TemplateProcessing") || template_seen++) {
            return tti_step_unknown(t, root, "post_processor", step, expected);
        }
        TTI_TRY(tti_read_template(t, step));
    }
done:
    return status;
}

/* ByteLevel; or SentencePiece's Replace U+2581 by " ", ByteFallback, Fuse and, if so wished, Strip one " " at
 * the start. */
static tt_status tti_read_decoder(tt_tokenizer *t, const tt_json *root) {
    static const char *const kinds[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    const tt_json *whole = tt_json_get(root, "decoder"), *step = tti_steps(whole, "decoders");
    int k = 0;
    if (!t->characters) {
        return tti_expect(t, tti_type_is(whole, "ByteLevel"), "", root, "decoder", "ByteLevel");
    }
    for (; step && step != whole && k < 4 && tti_type_is(step, kinds[k]); step = step->next) {
        int good = k == 1 || k == 2 || tti_member_is(step, "content", " ");
        if (k == 0) { good &= tti_member_is(tt_json_get(step, "pattern"), "String", TTI_SPACE_MARK); }
        if (k == 3) { good &= tt_json_number(step, "start", 0) == 1 && tt_json_number(step, "stop", 0) == 0; }
        if (!good) { break; }
        k++;
    }
    t->strip = k == 4;
    return tti_expect(t, k >= 3 && !step, "", root, "decoder",
                      "a Sequence of Replace U+2581, ByteFallback, Fuse and Strip of one space");
}

/* Every token around a document is there. */
static tt_status tti_check_template(const tt_tokenizer *t) {
    int i, n = t->n_before + t->n_after;
    for (i = 0; i < n; i++) {
        int32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        if (tti_id_taken(t, id)) { continue; }
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_tokenizer_parse: post_processor: id is %ld, which no token has", (long)id);
    }
    return TT_OK;
}

/* The members of tokenizer.json, in the order in which one decides how the next is read. What the encoder
 * could not do to the letter is an error here, never an approximation. */
static tt_status tti_read_tokenizer(tt_tokenizer *t, const tt_json *root) {
    const tt_json *added = tt_json_get(root, "added_tokens"), *node;
    tt_status status;
    int metaspace, good;
    if (root->type != TT_JSON_OBJECT) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: the text is no JSON object");
    }
    TTI_TRY(tti_expect(t, tti_member_null(root, "truncation"), "", root, "truncation", "null"));
    TTI_TRY(tti_expect(t, tti_member_null(root, "padding"), "", root, "padding", "null"));
    TTI_TRY(tti_read_normalizer(t, root));
    metaspace = !t->characters && tti_type_is(tt_json_get(root, "pre_tokenizer"), "Metaspace");
    if (metaspace) { TTI_TRY(tti_read_metaspace(t, root)); }
    TTI_TRY(tti_read_post_processor(t, root));
    TTI_TRY(tti_read_decoder(t, root));
    good = tti_member_null(root, "added_tokens") || added->type == TT_JSON_ARRAY;
    TTI_TRY(tti_expect(t, good, "", root, "added_tokens", "an array"));
    if (!t->characters) { TTI_TRY(tti_read_pre_tokenizer(t, root)); }
    good = !t->characters || metaspace || tti_member_null(root, "pre_tokenizer");
    TTI_TRY(tti_expect(t, good, "", root, "pre_tokenizer", "null with this normalizer"));
    for (node = tti_elements(added); node; node = node->next) { TTI_TRY(tti_read_added(t, node)); }
    TTI_TRY(tti_read_model(t, tt_json_get(root, "model")));
    TTI_TRY(tti_check_template(t));
    status = tti_added_index(t);
done:
    return status;
}

/* Whether a text begins with a line of a .tiktoken file, "base64 rank", for a sentence that helps. */
static int tti_is_ranks(const char *file, size_t size) {
    size_t i = 0;
    while (i < size && i < 1024 && file[i] != ' ' && !strchr("{[\"\n", file[i])) { i++; }
    return i > 0 && i + 1 < size && file[i] == ' ' && file[i + 1] >= '0' && file[i + 1] <= '9';
}

TT_API tt_tokenizer *tt_tokenizer_parse(tt_context *ctx, const char *file, size_t size) {
    tt_json *root = NULL;
    tt_tokenizer *t = NULL;
    if (tti_is_ranks(file, size)) {
        tt_fail(ctx, TT_ERR_FILE,
                "tt_tokenizer_parse: this is a .tiktoken file, expected tokenizer.json, which "
                "tools/convert_weights.py makes of it");
    } else {
        root = tt_json_parse(ctx, file, size);
    }
    t = root ? tti_tokenizer_create(ctx) : NULL;
    if (t && tti_read_tokenizer(t, root) != TT_OK) {
        tt_tokenizer_destroy(t);
        t = NULL;
    }
    tt_json_free(ctx, root);
    return (tt_tokenizer *)tti_made(ctx, "tt_tokenizer_parse", t);
}

TT_API tt_tokenizer *tt_tokenizer_load(tt_context *ctx, const char *path) {
    tt_text file = TT_INIT;
    tt_tokenizer *t = NULL;
    file.ctx = ctx;
    if (tt_file_read(ctx, path, &file) == TT_OK) {
        t = tt_tokenizer_parse(ctx, file.data, file.size);
        if (!t) {
            char reason[TTI_ERROR_SIZE];
            memcpy(reason, ctx->error, sizeof reason);
            tt_fail(ctx, tt_error_status(ctx), "%s: %s", path, reason);
        }
    }
    tt_text_free(&file);
    return (tt_tokenizer *)tti_made(ctx, "tt_tokenizer_load", t);
}

/* ---- [tt:tokenizer.write] writing tokenizer.json ---- */

static const char *tti_bool(int value) { return value ? "true" : "false"; }

/* Appends the JSON string by which the model's vocabulary and merges call a token. */
static tt_status tti_write_key(const tt_tokenizer *t, int32_t id, tt_text *key, tt_text *out) {
    const tti_token *token = &t->tokens[id];
    const char *bytes = tti_token_bytes(t, token);
    if (token->flags & TTI_ADDED || t->characters) { return tt_text_json(out, bytes, token->size); }
    if (tti_bytes_to_key(bytes, token->size, key) != TT_OK) { return TT_ERR_MEM; }
    return tt_text_json(out, key->data, key->size);
}

/* Appends a token's text as a JSON string between two texts. */
static tt_status tti_write_quoted(const tt_tokenizer *t, int32_t id, const char *before, const char *behind,
                                  tt_text *out) {
    const tti_token *token = &t->tokens[id];
    tt_status status;
    TTI_TRY(tt_text_append(out, before, strlen(before)));
    TTI_TRY(tt_text_json(out, tti_token_bytes(t, token), token->size));
    status = tt_text_append(out, behind, strlen(behind));
done:
    return status;
}

/* In the order of ids, as tokenizers writes them. */
static tt_status tti_write_added(const tt_tokenizer *t, tt_text *out) {
    const char *comma = "";
    tt_status status;
    size_t i;
    TTI_TRY(tt_text_format(out, "  \"added_tokens\": ["));
    for (i = 0; i < t->n_tokens; i++) {
        int flags = t->tokens[i].flags;
        if (!(flags & TTI_ADDED)) { continue; }
        TTI_TRY(tt_text_format(out, "%s\n    {\"id\": %lu, ", comma, (unsigned long)i));
        TTI_TRY(tti_write_quoted(t, (int32_t)i, "\"content\": ", ", ", out));
        TTI_TRY(tt_text_format(out, "\"single_word\": %s, \"lstrip\": %s, \"rstrip\": %s, ",
                               tti_bool(flags & TTI_SINGLE), tti_bool(flags & TTI_LSTRIP),
                               tti_bool(flags & TTI_RSTRIP)));
        TTI_TRY(tt_text_format(out, "\"normalized\": %s, \"special\": %s}", tti_bool(flags & TTI_NORMALIZED),
                               tti_bool(flags & TTI_SPECIAL)));
        comma = ",";
    }
    status = tt_text_format(out, "%s],\n", *comma ? "\n  " : "");
done:
    return status;
}

/* Metaspace, or ByteLevel alone or behind Digits or a Split: what tti_read_pre_tokenizer reads. */
static tt_status tti_write_pre_tokenizer(const tt_tokenizer *t, tt_text *out) {
    int own_pattern = t->pretokenizer == TT_PRETOKENIZE_GPT2 || t->pretokenizer == TT_PRETOKENIZE_SMOLLM2;
    static const char sequence[] = "{\"type\": \"Sequence\", \"pretokenizers\": [\n    ";
    const char *close = "";
    tt_status status;
    size_t i = 0;
    TTI_TRY(tt_text_format(out, "  \"pre_tokenizer\": "));
    if (t->characters >= TTI_MARKS_ALWAYS) {
        return tt_text_format(
            out,
            "{\"type\": \"Metaspace\", \"replacement\": \"%s\", \"prepend_scheme\": \"%s\", "
            "\"split\": %s},\n",
            TTI_SPACE_MARK, tti_prepend_schemes[(int)t->characters - (int)TTI_MARKS_ALWAYS],
            tti_bool(t->pretokenizer == TTI_PRETOKENIZE_EACH_MARK));
    }
    if (t->characters) { return tt_text_format(out, "null,\n"); }
    while (i < TTI_N_PATTERNS && (int)tti_patterns[i].kind != t->pretokenizer) { i++; }
    if (t->pretokenizer == TT_PRETOKENIZE_SMOLLM2) {
        TTI_TRY(
            tt_text_format(out, "%s{\"type\": \"Digits\", \"individual_digits\": true},\n    ", sequence));
        close = "\n  ]}";
    } else if (i < TTI_N_PATTERNS && !own_pattern) {
        TTI_TRY(tt_text_format(out, "%s{\"type\": \"Split\", \"pattern\": {\"Regex\": ", sequence));
        TTI_TRY(tt_text_json(out, tti_patterns[i].pattern, strlen(tti_patterns[i].pattern)));
        TTI_TRY(tt_text_format(out, "}, \"behavior\": \"Isolated\", \"invert\": false},\n    "));
        close = "\n  ]}";
    }
    status = tt_text_format(out,
                            "{\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"trim_offsets\": true, "
                            "\"use_regex\": %s}%s,\n",
                            tti_bool(t->prefix_space), tti_bool(own_pattern), close);
done:
    return status;
}

/* null, or TemplateProcessing with the tokens before and after; a pair of texts, which is never read here,
 * has none. */
static tt_status tti_write_post_processor(const tt_tokenizer *t, tt_text *out) {
    static const char open[] = "{\"SpecialToken\": {\"id\": ",
                      sequence[] = "{\"Sequence\": {\"id\": \"%s\", \"type_id\": %d}}";
    static const char open_behind[] = ", {\"SpecialToken\": {\"id\": ", close[] = ", \"type_id\": 0}}";
    int i, n = t->n_before + t->n_after;
    tt_status status;
    TTI_TRY(tt_text_format(out, "  \"post_processor\": "));
    if (n == 0) { return tt_text_format(out, "null,\n"); }
    TTI_TRY(tt_text_format(out, "{\"type\": \"TemplateProcessing\", \"single\": ["));
    for (i = 0; i < t->n_before; i++) {
        TTI_TRY(tti_write_quoted(t, t->before[i], open, ", \"type_id\": 0}}, ", out));
    }
    TTI_TRY(tt_text_format(out, sequence, "A", 0));
    for (i = 0; i < t->n_after; i++) { TTI_TRY(tti_write_quoted(t, t->after[i], open_behind, close, out)); }
    TTI_TRY(tt_text_format(out, "],\n    \"pair\": ["));
    TTI_TRY(tt_text_format(out, sequence, "A", 0));
    TTI_TRY(tt_text_format(out, ", "));
    TTI_TRY(tt_text_format(out, sequence, "B", 1));
    TTI_TRY(tt_text_format(out, "], \"special_tokens\": {"));
    for (i = 0; i < n; i++) {
        int32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        TTI_TRY(tti_write_quoted(t, id, i ? ", " : "", ": ", out));
        TTI_TRY(tti_write_quoted(t, id, "{\"id\": ", ", ", out));
        TTI_TRY(tt_text_format(out, "\"ids\": [%ld], ", (long)id));
        TTI_TRY(tti_write_quoted(t, id, "\"tokens\": [", "]}", out));
    }
    status = tt_text_format(out, "}},\n");
done:
    return status;
}

static tt_status tti_write_normalizer(const tt_tokenizer *t, tt_text *out) {
    static const char nfc[] = "{\"type\": \"NFC\"}";
    const char *first = t->nfc ? nfc : "", *comma = t->nfc ? ", " : "";
    if (t->characters != TTI_MARKS_NORMALIZER) {
        return tt_text_format(out, "  \"normalizer\": %s,\n", t->nfc ? nfc : "null");
    }
    return tt_text_format(
        out,
        "  \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [%s%s"
        "{\"type\": \"Prepend\", \"prepend\": \"%s\"}, "
        "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"%s\"}]},\n",
        first, comma, TTI_SPACE_MARK, TTI_SPACE_MARK);
}

static tt_status tti_write_decoder(const tt_tokenizer *t, tt_text *out) {
    static const char strip[] = ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}";
    if (!t->characters) {
        return tt_text_format(out, "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
                              "\"trim_offsets\": true, \"use_regex\": true},\n");
    }
    return tt_text_format(
        out,
        "  \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", "
        "\"pattern\": {\"String\": \"%s\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, "
        "{\"type\": \"Fuse\"}%s]},\n",
        TTI_SPACE_MARK, t->strip ? strip : "");
}

/* Merges stand in their order, which is their rank; as pairs, since a token may hold a blank. */
static tt_status tti_write_model(const tt_tokenizer *t, tt_text *key, tt_text *out) {
    const char *comma = "";
    tt_status status;
    size_t i;
    TTI_TRY(tt_text_format(
        out,
        "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
        "    \"fuse_unk\": false,\n    \"byte_fallback\": %s,\n    \"ignore_merges\": %s,\n"
        "    \"vocab\": {",
        tti_bool(t->characters != TTI_MARKS_NONE), tti_bool(t->ignore_merges)));
    for (i = 0; i < t->n_tokens; i++) {
        if (!(t->tokens[i].flags & TTI_IN_MODEL)) { continue; }
        TTI_TRY(tt_text_format(out, "%s\n      ", comma));
        TTI_TRY(tti_write_key(t, (int32_t)i, key, out));
        TTI_TRY(tt_text_format(out, ": %lu", (unsigned long)i));
        comma = ",";
    }
    TTI_TRY(tt_text_format(out, "\n    },\n    \"merges\": ["));
    for (i = 0; i < t->n_merges; i++) {
        TTI_TRY(tt_text_format(out, "%s\n      [", i ? "," : ""));
        TTI_TRY(tti_write_key(t, t->merges[i].left, key, out));
        TTI_TRY(tt_text_append(out, ", ", 2));
        TTI_TRY(tti_write_key(t, t->merges[i].right, key, out));
        TTI_TRY(tt_text_append(out, "]", 1));
    }
    status = tt_text_format(out, "\n    ]\n  }\n}\n");
done:
    return status;
}

TT_API tt_status tt_tokenizer_json(const tt_tokenizer *t, tt_text *out) {
    size_t before = out->size;
    tt_text key = TT_INIT;
    tt_status status;
    key.ctx = t->ctx;
    TTI_TRY(
        tt_text_format(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"));
    TTI_TRY(tti_write_added(t, out));
    TTI_TRY(tti_write_normalizer(t, out));
    TTI_TRY(tti_write_pre_tokenizer(t, out));
    TTI_TRY(tti_write_post_processor(t, out));
    TTI_TRY(tti_write_decoder(t, out));
    TTI_TRY(tti_write_model(t, &key, out));
done:
    if (status != TT_OK) { tti_text_cut(out, before); }
    tt_text_free(&key);
    return status;
}

TT_API tt_status tt_tokenizer_save(const tt_tokenizer *t, const char *path) {
    tt_text json = TT_INIT;
    tt_status status;
    json.ctx = t->ctx;
    TTI_TRY(tt_tokenizer_json(t, &json));
    status = tt_file_write(t->ctx, path, json.data, json.size);
done:
    tt_text_free(&json);
    return status;
}

/* ---- [tt:tokenizer.template] templates ----
 * A text that is put together from parts of two kinds: what a template says, whose special tokens count, and
 * what is filled in, where they are text. It is encoded as one text, so that words and spaces meet as they do
 * on paper. */
typedef struct tti_composition {
    tt_text text;
    tti_part *parts;
    size_t n, capacity;
    tt_status status;                /* the first failure of tti_compose */
} tti_composition;

/* Appends bytes; those of the same kind as the last part lengthen it. */
static void tti_compose(tti_composition *c, const char *bytes, size_t size, tt_special special) {
    tt_status status = c->status;
    if (status != TT_OK || size == 0) { return; }
    TTI_TRY(tti_grow_array(c->text.ctx, &c->parts, &c->capacity, c->n + 1, sizeof *c->parts));
    TTI_TRY(tt_text_append(&c->text, bytes, size));
    if (c->n == 0 || c->parts[c->n - 1].special != special) { c->parts[c->n++].special = special; }
    c->parts[c->n - 1].end = c->text.size;
done:
    c->status = status;
}

static void tti_compose_text(tti_composition *c, const char *text, tt_special special) {
    tti_compose(c, text, strlen(text), special);
}

static void tti_composition_free(tti_composition *c) {
    tt_free(c->text.ctx, c->parts, c->capacity, sizeof *c->parts);
    tt_text_free(&c->text);
}

/* Appends the ids of the text from byte `from` on; the composition is of no use afterwards. */
static tt_status tti_composition_encode(const tt_tokenizer *t, tti_composition *c, size_t from, tt_ids *out) {
    tti_encoder e = tti_encoder_make(t, &t->workers[0], 0, out);
    size_t first = 0, i;
    if (c->status != TT_OK || from == c->text.size) { return c->status; }
    while (c->parts[first].end <= from) { first++; }
    for (i = first; i < c->n; i++) { c->parts[i].end -= from; }
    return tti_encode_parts(&e, c->text.data + from, c->text.size - from, c->parts + first, c->n - first);
}

/* {names} in a template are replaced by texts, as special tokens or as plain text. */
typedef struct tti_slot { const char *name, *text; size_t size; tt_special special; } tti_slot;

static tti_slot tti_slot_make(const char *name, const char *text, size_t size, tt_special special) {
    tti_slot slot;
    slot.name = name;
    slot.text = text;
    slot.size = size;
    slot.special = special;
    return slot;
}

/* The slot whose name stands at `at`, or NULL. */
static const tti_slot *tti_slot_at(const char *at, const char *end, const tti_slot *slots, int n) {
    int i;
    for (i = 0; i < n; i++) {
        size_t size = strlen(slots[i].name);
        if ((size_t)(end - at) >= size && memcmp(at, slots[i].name, size) == 0) { return &slots[i]; }
    }
    return NULL;
}

/* Appends the ids of the template [at, end) with its slots filled. */
static tt_status tti_render(const tt_tokenizer *t, const char *at, const char *end, const tti_slot *slots,
                            int n, tt_ids *out) {
    tti_composition c;
    tt_status status;
    memset(&c, 0, sizeof c);
    c.text.ctx = t->ctx;
    while (at < end) {
        const tti_slot *slot = tti_slot_at(at, end, slots, n);
        const char *next = at + 1;
        if (slot) {
            tti_compose(&c, slot->text, slot->size, slot->special);
            at += strlen(slot->name);
            continue;
        }
        while (next < end && !tti_slot_at(next, end, slots, n)) { next++; }
        tti_compose(&c, at, (size_t)(next - at), TT_SPECIAL_PARSE);
        at = next;
    }
    status = tti_composition_encode(t, &c, 0, out);
    tti_composition_free(&c);
    return status;
}

/* ---- [tt:tokenizer.formats] chat formats ----
 * A format is a row of texts around role and content. A template of Hugging Face is a program in Jinja; the
 * known ones are told by their flattened text, which is the same for all ways of writing the same program: no
 * comments, no white space between tags and none in them, strings in single quotes and joined, x.y for
 * x['y']. */
enum {
    TTI_CHAT_TRIM = 1,        /* white space around the content is cut     */
    TTI_CHAT_ROLES = 2,       /* system, user and assistant alone          */
    TTI_CHAT_DATE = 4,        /* the system message begins with two dates  */
    TTI_CHAT_THOUGHTS = 8     /* thoughts only behind the last question    */
};

typedef struct tti_chat_format {
    const char *name, *token;                    /* token: which tells the tokenizer's format; "" = any,
                                                    NULL = none */
    const char *begin, *head, *middle, *tail;    /* begin, then of each message: head, role, middle,
                                                    content, tail */
    const char *prompt, *system;                 /* system: the first message where none is given; NULL =
                                                    none */
    int flags;
    const char *templates[2];                    /* flattened; * is any text, that of tools */
} tti_chat_format;

#define TTI_CHATML "<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n"
#define TTI_LLAMA3_TURN "<|start_header_id|>assistant<|end_header_id|>"
#define TTI_LLAMA3                                                                                           \
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", TTI_LLAMA3_TURN "\n\n"
#define TTI_SMOLLM2 "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define TTI_QWEN2 "You are a helpful assistant."
#define TTI_QWEN25 "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

/* What the flattened templates have in common. */
#define TTI_JINJA_PROMPT(text) "{%ifadd_generation_prompt%}{{'" text "'}}{%endif%}"
#define TTI_JINJA_TURN "'<|im_start|>'+message.role+'\\n'+message.content+'<|im_end|>\\n'"
#define TTI_JINJA_CHATML(system) \
    "{%formessageinmessages%}" system "{{" TTI_JINJA_TURN \
    "}}{%endfor%}" TTI_JINJA_PROMPT("<|im_start|>assistant\\n")
#define TTI_JINJA_SYSTEM(text) \
    "{%ifloop.firstandmessages[0].role!='system'%}{{'<|im_start|>system\\n" text "<|im_end|>\\n'}}{%endif%}"
#define TTI_JINJA_FIRST "{{'<|im_start|>system\\n'+messages[0].content+'<|im_end|>\\n'}}"
#define TTI_JINJA_LLAMA \
    "'<|start_header_id|>'+message.role+'<|end_header_id|>\\n\\n'+message.content|trim+'<|eot_id|>'"
#define TTI_JINJA_TOOLS \
    "{{bos_token}}{%ifcustom_toolsisdefined%}{%settools=custom_tools%}{%endif%}" \
    "{%ifnottools_in_user_messageisdefined%}{%settools_in_user_message=true%}{%endif%}"
#define TTI_JINJA_DATES(or_tools, tools) \
    "{%ifnottoolsisdefined%}{%settools=none%}{%endif%}{%ifmessages[0].role=='system'%}" \
    "{%setsystem_message=messages[0].content|trim%}{%setmessages=messages[1:]%}{%else%}" \
    "{%setsystem_message=''%}" \
    "{%endif%}{{'<|start_header_id|>system<|end_header_id|>\\n\\n'}}" \
    "{%if" or_tools "toolsisnotnone%}{{'Environment: ipython\\n'}}{%endif%}" tools \
    "{{'Cutting Knowledge Date: December 2023\\n'}}" \
    "{{'Today Date: '+date_string+'\\n\\n'}}{%iftoolsisnotnoneandnottools_in_user_message%}*{%endif%}" \
    "{{system_message}}{{'<|eot_id|>'}}{%iftools_in_user_messageandnottoolsisnone%}*{%endif%}" \
    "{%formessageinmessages%}" \
    "{%ifnot(message.role=='ipython'ormessage.role=='tool'or'tool_calls'inmessage)%}" \
    "{{" TTI_JINJA_LLAMA "}}{%elif'tool_calls'inmessage%}*{%endif%}{%endfor%}" \
    TTI_JINJA_PROMPT(TTI_LLAMA3_TURN "\\n\\n")
#define TTI_JINJA_NO_DATE "{%setdate_string='26 Jul 2024'%}"

/* Of formats that a tokenizer tells, the first that fits is taken: "plain", which fits any, stands last. */
static const tti_chat_format tti_chat_formats[] = {
    {"chatml", "<|im_start|>", "", TTI_CHATML, NULL, 0, {TTI_JINJA_CHATML(""), NULL}},
    {"qwen2", NULL, "", TTI_CHATML, TTI_QWEN2, 0, {TTI_JINJA_CHATML(TTI_JINJA_SYSTEM(TTI_QWEN2)), NULL}},
    {"qwen2.5",
     NULL,
     "",
     TTI_CHATML,
     TTI_QWEN25,
     TTI_CHAT_ROLES,
     {"{%iftools%}*{%else%}{%ifmessages[0].role=='system'%}" TTI_JINJA_FIRST
      "{%else%}{{'<|im_start|>system\\n" TTI_QWEN25
      "<|im_end|>\\n'}}{%endif%}{%endif%}{%formessageinmessages%}{%if(message.role=='user')or"
      "(message.role=='system'andnotloop.first)or(message.role=='assistant'andnotmessage.tool_calls)%}"
      "{{" TTI_JINJA_TURN
      "}}{%elifmessage.role=='assistant'%}*{%endif%}{%endfor%}" TTI_JINJA_PROMPT("<|im_start|>assistant\\n"),
      NULL}},
    {"qwen3",
     NULL,
     "",
     TTI_CHATML,
     NULL,
     TTI_CHAT_ROLES | TTI_CHAT_THOUGHTS,
     {"{%iftools%}*{%else%}{%ifmessages[0].role=='system'%}" TTI_JINJA_FIRST "{%endif%}{%endif%}"
      "{%setns=namespace(multi_step_tool=true,last_query_index=messages|length-1)%}{%formessageinmessages[::-"
      "1]%}"
      "{%setindex=(messages|length-1)-loop.index0%}{%ifns.multi_step_toolandmessage.role=='user'andnot"
      "(message.content.startswith('<tool_response>')andmessage.content.endswith('</tool_response>'))%}"
      "{%setns.multi_step_tool=false%}{%setns.last_query_index=index%}{%endif%}{%endfor%}{%"
      "formessageinmessages%}"
      "{%if(message.role=='user')or(message.role=='system'andnotloop.first)%}{{" TTI_JINJA_TURN "}}"
      "{%elifmessage.role=='assistant'%}{%setcontent=message.content%}{%setreasoning_content=''%}"
      "{%ifmessage.reasoning_contentisdefinedandmessage.reasoning_contentisnotnone%}"
      "{%setreasoning_content=message.reasoning_content%}{%else%}{%if'</think>'inmessage.content%}"
      "{%setcontent=message.content.split('</think>')[-1].lstrip('\\n')%}{%setreasoning_content="
      "message.content.split('</"
      "think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')%}{%endif%}{%endif%}"
      "{%ifloop.index0>ns.last_query_index%}{%ifloop.lastor(notloop.lastandreasoning_content)%}"
      "{{'<|im_start|>'+message.role+'\\n<think>\\n'+reasoning_content.strip('\\n')+'\\n</think>\\n\\n'"
      "+content.lstrip('\\n')}}{%else%}{{'<|im_start|>'+message.role+'\\n'+content}}{%endif%}{%else%}"
      "{{'<|im_start|>'+message.role+'\\n'+content}}{%endif%}{%ifmessage.tool_calls%}*{%endif%}{{'<|im_end|>"
      "\\n'}}"
      "{%elifmessage.role=='tool'%}*{%endif%}{%endfor%}{%ifadd_generation_prompt%}{{'<|im_start|>"
      "assistant\\n'}}"
      "{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'<think>\\n\\n</"
      "think>\\n\\n'}}{%endif%}{%endif%}",
      NULL}},
    {"smollm2",
     NULL,
     "",
     TTI_CHATML,
     TTI_SMOLLM2,
     0,
     {TTI_JINJA_CHATML(TTI_JINJA_SYSTEM(TTI_SMOLLM2)), NULL}},
    {"llama3.1",
     "<|finetune_right_pad_id|>",
     TTI_LLAMA3,
     NULL,
     TTI_CHAT_TRIM | TTI_CHAT_ROLES | TTI_CHAT_DATE,
     {TTI_JINJA_TOOLS "{%ifnotdate_stringisdefined%}" TTI_JINJA_NO_DATE "{%endif%}" TTI_JINJA_DATES(
          "builtin_toolsisdefinedor", "{%ifbuiltin_toolsisdefined%}*{%endif%}"),
      TTI_JINJA_TOOLS "{%ifnotdate_stringisdefined%}{%ifstrftime_nowisdefined%}"
                      "{%setdate_string=strftime_now('%d %b %Y')%}{%else%}" TTI_JINJA_NO_DATE
                      "{%endif%}{%endif%}" TTI_JINJA_DATES("", "")}},
    {"llama3",
     "<|start_header_id|>",
     TTI_LLAMA3,
     NULL,
     TTI_CHAT_TRIM,
     {"{%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent=" TTI_JINJA_LLAMA "%}"
      "{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}{{content}}{%endfor%}" TTI_JINJA_PROMPT(
          TTI_LLAMA3_TURN "\\n\\n"),
      NULL}},
    {"plain", "", "", "", ": ", "\n", "assistant:", NULL, 0, {NULL, NULL}}};
#define TTI_N_CHAT_FORMATS (sizeof tti_chat_formats / sizeof *tti_chat_formats)
#define TTI_CHAT_NAMES "chatml, qwen2, qwen2.5, qwen3, smollm2, llama3.1, llama3 or plain"

/* ---- [tt:tokenizer.recognize] which format a Jinja template writes ---- */

/* Python's white space in ASCII. */
static int tti_is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int tti_flat_ends(const tt_text *text, const char *tail) {
    size_t size = strlen(tail);
    return text->size >= size && memcmp(text->data + text->size - size, tail, size) == 0;
}

/* Copies text that is printed as it stands, a line feed as \n. */
static tt_status tti_flat_copy(const char *at, const char *end, tt_text *out) {
    tt_status status = TT_OK;
    for (; at < end; at++) {
        TTI_TRY(*at == '\n' ? tt_text_append(out, "\\n", 2) : tt_text_append(out, at, 1));
    }
done:
    return status;
}

/* A string that begins at *at with its quote; what follows 'a'+ is joined to it. *at moves behind it. */
static tt_status tti_flat_string(const char **at, const char *end, tt_text *out) {
    const char *begin = *at + 1, *stop = begin;
    tt_status status;
    while (stop < end && *stop != begin[-1]) { stop += *stop == '\\' && stop + 1 < end ? 2 : 1; }
    *at = stop < end ? stop + 1 : end;
    if (tti_flat_ends(out, "'+")) {
        out->size -= 2;
    } else {
        TTI_TRY(tt_text_append(out, "'", 1));
    }
    TTI_TRY(tti_flat_copy(begin, stop, out));
    status = tt_text_append(out, "'", 1);
done:
    return status;
}

/* "['name'" at the end becomes ".name"; otherwise ']' is appended. */
static tt_status tti_flat_index(tt_text *out) {
    char *text = out->data;
    size_t at = out->size;
    if (!tti_flat_ends(out, "'")) { return tt_text_append(out, "]", 1); }
    for (at--; at > 0 && (text[at - 1] == '_' || (text[at - 1] >= 'a' && text[at - 1] <= 'z')); at--) {}
    if (at < 3 || at == out->size - 1 || text[at - 1] != '\'' || text[at - 2] != '[') {
        return tt_text_append(out, "]", 1);
    }
    memmove(text + at - 1, text + at, out->size - 1 - at);
    text[at - 2] = '.';
    out->size -= 2;
    return TT_OK;
}

/* The tag at *at, "{% ... %}" or "{{ ... }}"; *at moves behind it. */
static tt_status tti_flat_tag(const char **at, const char *end, tt_text *out) {
    const char *p = *at;
    char close = p[1] == '%' ? '%' : '}';
    tt_status status;
    TTI_TRY(tt_text_append(out, p, 2));
    for (p += p + 2 < end && p[2] == '-' ? 3 : 2; p < end;) {
        if (*p == '\'' || *p == '"') {
            TTI_TRY(tti_flat_string(&p, end, out));
            continue;
        }
        if (end - p >= 2 && *p == close && p[1] == '}') {
            *at = p + 2;
            return tt_text_append(out, p, 2);
        }
        if (*p == ']') {
            TTI_TRY(tti_flat_index(out));
        } else if (!tti_is_blank(*p) && !(*p == '-' && end - p >= 3 && p[1] == close && p[2] == '}')) {
            TTI_TRY(tt_text_append(out, p, 1));
        }
        p++;
    }
    *at = p;
done:
    return status;
}

/* Text [at, tag) between tags as Jinja prints it with trim_blocks and lstrip_blocks, which transformers sets:
 * '-' in a tag takes all white space beside it, "%}" the line feed behind it, "{%" the blanks before it on a
 * line that begins with it. */
static tt_status tti_flat_between(const char *begin, const char *at, const char *tag, const char *end,
                                  tt_text *out) {
    const char *line;
    int first = at == begin;
    if (at - begin >= 3 && at[-3] == '-') {
        while (at < tag && tti_is_blank(*at)) { at++; }
    } else if (!first && at[-2] != '}' && at < tag && *at == '\n') {
        at++;
        first = 1;
    }
    if (end - tag > 2 && tag[2] == '-') {
        while (tag > at && tti_is_blank(tag[-1])) { tag--; }
    } else if (tag < end && tag[1] != '{') {
        for (line = tag; line > at && (line[-1] == ' ' || line[-1] == '\t'); line--) {}
        if (line > at ? line[-1] == '\n' : first) { tag = line; }
    }
    return tti_flat_copy(at, tag, out);
}

static int tti_tag_at(const char *at, const char *end) {
    return end - at >= 2 && *at == '{' && (at[1] == '%' || at[1] == '{' || at[1] == '#');
}

/* The whole template: text, tags and comments in turn. A line feed at its end is not printed by Jinja. */
static tt_status tti_chat_flatten(const char *begin, const char *end, tt_text *out) {
    const char *at = begin, *tag;
    tt_status status = TT_OK;
    if (end > begin && end[-1] == '\n') { end--; }
    while (at < end) {
        for (tag = at; tag < end && !tti_tag_at(tag, end); tag++) {}
        TTI_TRY(tti_flat_between(begin, at, tag, end, out));
        at = tag;
        if (tag == end) { break; }
        if (tag[1] != '#') {
            TTI_TRY(tti_flat_tag(&at, end, out));
            continue;
        }
        for (at = tag + 2; end - at >= 2 && !(*at == '#' && at[1] == '}'); at++) {}      /* a comment */
        at = end - at >= 2 ? at + 2 : end;
    }
    status = tt_text_append(out, "", 0);
done:
    return status;
}

/* Whether text is as the pattern, in which '*' stands for any text. */
static int tti_chat_matches(const char *pattern, const char *text) {
    const char *star = NULL, *from = text;
    while (*text) {
        if (*pattern == '*') {
            star = ++pattern;
            from = text;
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star;
            text = ++from;
        } else {
            return 0;
        }
    }
    return !*pattern;
}

TT_API const char *tt_chat_recognize(tt_context *ctx, const char *chat_template, size_t size) {
    const char *name = NULL;
    tt_text flat = TT_INIT;
    tt_status status;
    size_t k;
    flat.ctx = ctx;
    TTI_TRY(tti_chat_flatten(chat_template, chat_template + size, &flat));
    for (k = 0; k < 2 * TTI_N_CHAT_FORMATS && !name; k++) {
        const char *known = tti_chat_formats[k / 2].templates[k % 2];
        if (known && tti_chat_matches(known, flat.data)) { name = tti_chat_formats[k / 2].name; }
    }
    if (!name) {
        tt_fail(ctx, TT_ERR_FILE,
                "chat template %.70s... is not known here, choose the format by name: " TTI_CHAT_NAMES,
                flat.data);
    }
done:
    tt_text_free(&flat);
    return name;
}

/* ---- [tt:tokenizer.prompt] how a prompt begins ---- */

/* Makes the sequence that begins at out->data[from] begin as the file says. What begins so itself needs no
 * second BOS; a chat template, which is told by the token that opens its turns, says all that it wants. */
static tt_status tti_begin(const tt_tokenizer *t, tt_ids *out, size_t from) {
    size_t n = (size_t)t->n_before, have = out->size - from, k;
    tt_status status;
    if (n == 0 || (have >= n && memcmp(out->data + from, t->before, n * sizeof *t->before) == 0)) {
        return TT_OK;
    }
    for (k = 0; k < TTI_N_CHAT_FORMATS && have > 0; k++) {
        const char *head = tti_chat_formats[k].head;
        if (*head && out->data[from] == tt_token_id(t, head)) { return TT_OK; }
    }
    status = tt_ids_append(out, t->before, n);      /* for the room */
    if (status != TT_OK) { return status; }
    memmove(out->data + from + n, out->data + from, have * sizeof *t->before);
    memcpy(out->data + from, t->before, n * sizeof *t->before);
    return TT_OK;
}

TT_API tt_status tt_encode_prompt(const tt_tokenizer *t, const char *text, size_t size, const char *question,
                                  size_t question_size, tt_ids *out) {
    tti_slot slot = tti_slot_make("{question}", question, question_size, TT_SPECIAL_TEXT);
    size_t before = out->size;
    tt_status status;
    TTI_TRY(tti_render(t, text, text + size, &slot, question ? 1 : 0, out));
    status = tti_begin(t, out, before);
done:
    if (status != TT_OK) { out->size = before; }
    return status;
}

/* ---- [tt:tokenizer.chat] conversations ---- */

static void tti_chat_head(const tti_chat_format *f, const char *role, tt_special special,
                          tti_composition *out) {
    tti_compose_text(out, f->head, TT_SPECIAL_PARSE);
    tti_compose_text(out, role, special);
    tti_compose_text(out, f->middle, TT_SPECIAL_PARSE);
}

/* Cuts off what Python's str.strip() would, so that [*at, *end) is left. */
static void tti_chat_trim(const char **at, const char **end) {
    uint32_t c;
    size_t n;
    const char *p;
    while (*at < *end && (n = tti_utf8(*at, *end, &c), tti_is_white(c) || (c >= 0x1C && c <= 0x1F))) {
        *at += n;
    }
    while (*end > *at && (p = tti_utf8_before(*at, *end, &c), tti_is_white(c) || (c >= 0x1C && c <= 0x1F))) {
        *end = p;
    }
}

/* A message that the format has nothing of its own to say about. */
static void tti_chat_message(const tti_chat_format *f, const tt_message *m, tt_special special,
                             tti_composition *out) {
    const char *content = m->content, *end = content + strlen(content);
    if (f->flags & TTI_CHAT_TRIM) { tti_chat_trim(&content, &end); }
    tti_chat_head(f, m->role, special, out);
    tti_compose(out, content, (size_t)(end - content), special);
    tti_compose_text(out, f->tail, TT_SPECIAL_PARSE);
}

/* Llama 3.1: the first message is the system's: the dates, and what the first message says if it is one. */
static void tti_chat_dates(const tti_chat_format *f, const char *date, const char *content,
                           tt_special special, tti_composition *out) {
    const char *end = content + strlen(content);
    tti_chat_head(f, "system", TT_SPECIAL_PARSE, out);
    tti_compose_text(out, "Cutting Knowledge Date: December 2023\nToday Date: ", TT_SPECIAL_PARSE);
    tti_compose_text(out, date ? date : "26 Jul 2024", special);
    tti_compose_text(out, "\n\n", TT_SPECIAL_PARSE);
    tti_chat_trim(&content, &end);
    tti_compose(out, content, (size_t)(end - content), special);
    tti_compose_text(out, f->tail, TT_SPECIAL_PARSE);
}

/* Qwen 3: an answer before the last question loses its thoughts; behind it they stand first, in the last one
 * even if empty. keep: whether they stand, even_empty: also where there are none. The answer is what follows
 * the last </think>, the thoughts what stands between the last <think> and the first </think>. */
static void tti_chat_thoughts(const tti_chat_format *f, const tt_message *m, int keep, int even_empty,
                              tt_special special, tti_composition *out) {
    static const char open[] = "<think>", close[] = "</think>";
    const char *answer = m->content, *thoughts = m->content, *end = strstr(m->content, close), *p;
    tti_chat_head(f, m->role, special, out);
    if (end) {
        for (p = end; p; p = strstr(answer, close)) { answer = p + sizeof close - 1; }
        while (*answer == '\n') { answer++; }
        while (end > thoughts && end[-1] == '\n') { end--; }
        for (p = strstr(thoughts, open); p && p + sizeof open - 1 <= end; p = strstr(thoughts, open)) {
            thoughts = p + sizeof open - 1;
        }
        while (thoughts < end && *thoughts == '\n') { thoughts++; }
    } else {
        end = thoughts;
    }
    if (keep && (even_empty || thoughts < end)) {
        while (*answer == '\n') { answer++; }
        tti_compose_text(out, "<think>\n", TT_SPECIAL_PARSE);
        tti_compose(out, thoughts, (size_t)(end - thoughts), special);
        tti_compose_text(out, "\n</think>\n\n", TT_SPECIAL_PARSE);
    }
    tti_compose_text(out, answer, special);
    tti_compose_text(out, f->tail, TT_SPECIAL_PARSE);
}

/* The last message of the user that is not the answer of a tool; the last message if there is none. */
static int tti_chat_question(const tt_message *messages, int n) {
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    int i;
    for (i = n - 1; i >= 0; i--) {
        const char *content = messages[i].content;
        size_t size = strlen(content), tail = sizeof close - 1;
        int tool = strncmp(content, open, sizeof open - 1) == 0 && size >= tail &&
                   strcmp(content + size - tail, close) == 0;
        if (strcmp(messages[i].role, "user") == 0 && !tool) { return i; }
    }
    return n - 1;
}

/* The format that the desc names, or the first that the tokenizer tells by its special tokens. */
static const tti_chat_format *tti_chat_find(tt_context *ctx, const tt_chat_desc *d) {
    size_t k;
    for (k = 0; k < TTI_N_CHAT_FORMATS; k++) {
        const tti_chat_format *f = &tti_chat_formats[k];
        int known = f->token && (!*f->token || (d->tokenizer && tt_token_id(d->tokenizer, f->token) >= 0));
        if (d->format && *d->format ? strcmp(d->format, f->name) == 0 : known) { return f; }
    }
    tt_fail(ctx, TT_ERR_ARG, "tt_chat_render: format is \"%.40s\", expected " TTI_CHAT_NAMES, d->format);
    return NULL;
}

static tt_status tti_chat_check(tt_context *ctx, const tti_chat_format *f, const tt_message *messages,
                                int n) {
    int i;
    for (i = 0; i < n; i++) {
        const char *role = messages[i].role;
        if (!role || !messages[i].content) {
            return tt_fail(ctx, TT_ERR_ARG, "tt_chat_render: messages[%d].%s is NULL, expected a text", i,
                           role ? "content" : "role");
        }
        if (!(f->flags & TTI_CHAT_ROLES)) { continue; }
        if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0) {
            return tt_fail(
                ctx, TT_ERR_ARG,
                "tt_chat_render: messages[%d].role is \"%.40s\", expected system, user or assistant in %s", i,
                role, f->name);
        }
    }
    return TT_OK;
}

/* The text of a conversation with its two kinds of parts: what the format says, and what role and content
 * say. */
static tt_status tti_chat_compose(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n,
                                  int generation_prompt, tti_composition *out) {
    const tti_chat_format *f = tti_chat_find(ctx, d);
    tt_special special = d->parse_content ? TT_SPECIAL_PARSE : TT_SPECIAL_TEXT;
    int question, system, i;
    memset(out, 0, sizeof *out);
    out->text.ctx = ctx;
    out->status = f ? tti_chat_check(ctx, f, messages, n) : TT_ERR_ARG;
    if (out->status != TT_OK) { return out->status; }
    question = tti_chat_question(messages, n);
    system = n > 0 && strcmp(messages[0].role, "system") == 0;
    tti_compose_text(out, f->begin, TT_SPECIAL_PARSE);
    if (f->system && !system) {
        tt_message m;
        m.role = "system";
        m.content = f->system;
        tti_chat_message(f, &m, TT_SPECIAL_PARSE, out);
    }
    if (f->flags & TTI_CHAT_DATE) {
        tti_chat_dates(f, d->date, system ? messages[0].content : "", special, out);
    }
    for (i = f->flags & TTI_CHAT_DATE ? system : 0; i < n; i++) {
        if (f->flags & TTI_CHAT_THOUGHTS && strcmp(messages[i].role, "assistant") == 0) {
            tti_chat_thoughts(f, &messages[i], i > question, i == n - 1, special, out);
        } else {
            tti_chat_message(f, &messages[i], special, out);
        }
    }
    if (generation_prompt) { tti_compose_text(out, f->prompt, TT_SPECIAL_PARSE); }
    return out->status;
}

TT_API tt_status tt_chat_render(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n,
                                tt_text *out) {
    tti_composition c;
    tt_status status;
    TTI_TRY(tti_chat_compose(ctx, d, messages, n, d->generation_prompt, &c));
    status = tt_text_append(out, c.text.data ? c.text.data : "", c.text.size);
done:
    tti_composition_free(&c);
    return status;
}

/* With an answer the conversation is composed twice, without it and with it; the answer is what the second
 * has more. */
TT_API tt_status tt_chat_encode(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n,
                                tt_ids *out, tt_ids *answer_or_null) {
    tti_composition prompt, all;
    size_t before = out->size, from = d->from, head;
    int turn = answer_or_null != NULL;
    tt_status status;
    if (!d->tokenizer) { return tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: tokenizer is NULL"); }
    if (turn && (n < 1 || !messages[n - 1].role || strcmp(messages[n - 1].role, "assistant") != 0)) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_chat_encode: the last of %d messages is not the assistant's, expected its answer",
                       n);
    }
    memset(&all, 0, sizeof all);
    all.text.ctx = ctx;
    TTI_TRY(tti_chat_compose(ctx, d, messages, n - turn, turn || d->generation_prompt, &prompt));
    head = prompt.text.size;
    if (turn) { TTI_TRY(tti_chat_compose(ctx, d, messages, n, 0, &all)); }
    if (turn && (all.text.size < head || (head > 0 && memcmp(all.text.data, prompt.text.data, head) != 0))) {
        status = tt_fail(ctx, TT_ERR_ARG,
                         "tt_chat_encode: the template changes what stands before the answer, messages[%d]",
                         n - 1);
        goto done;
    }
    if (from > head) {
        status =
            tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: from is %lu, expected 0 to %lu, the bytes of the text",
                    (unsigned long)from, (unsigned long)head);
        goto done;
    }
    TTI_TRY(tti_composition_encode(d->tokenizer, &prompt, from, out));
    if (from == 0) { TTI_TRY(tti_begin(d->tokenizer, out, before)); }
    if (turn) { status = tti_composition_encode(d->tokenizer, &all, head, answer_or_null); }
done:
    if (status != TT_OK) { out->size = before; }
    tti_composition_free(&prompt);
    tti_composition_free(&all);
    return status;
}

/* ---- [tt:tokenizer.train] training ----
 * The distinct pieces of the text are laid end to end; each symbol is a token at a position, linked to its
 * neighbours in the piece. A position is the left half of at most one pair, and all positions of one pair
 * form a list, so that counts are exact at all times and a merge touches only where its pair occurs. The
 * pairs stand in a heap, the most frequent on top; each knows its place in it. Total work: O(text *
 * log(pairs)). Source: arXiv 1508.07909, algorithm 1, whose order of equal pairs is open: here the smaller
 * ids go first, as in Hugging Face's BpeTrainer. */
typedef struct tti_symbol {
    int32_t id;
    int32_t pair;                    /* of (this, next); -1 = none                                 */
    uint32_t previous, next;         /* in the piece                                               */
    uint32_t earlier, later;         /* positions of the same pair                                 */
    uint32_t piece;
} tti_symbol;

typedef struct tti_bpe_pair {
    int64_t count;                   /* times it occurs in the text                                */
    int32_t left, right;
    uint32_t first, last;            /* of its positions                                           */
    size_t heap_at;
    int barred;                      /* 1: is never merged, since it would spell a special token   */
} tti_bpe_pair;

typedef struct tti_bpe {
    tt_context *ctx;
    tti_dict pieces;                 /* bytes to count                                             */
    tti_symbol *symbols;             /* one per byte of the pieces                                 */
    size_t n_symbols;
    tti_bpe_pair *pairs;
    size_t n_pairs, pairs_capacity;
    tti_pair_map index;              /* (left, right) to its place in pairs                        */
    int32_t *heap;                   /* [n_pairs] places in pairs                                  */
    size_t heap_capacity;
    uint32_t *places;                /* where the pair being merged occurs                         */
    size_t places_capacity;
} tti_bpe;

static void tti_bpe_free(tti_bpe *b) {
    tti_dict_free(&b->pieces);
    tt_free(b->ctx, b->symbols, b->n_symbols, sizeof *b->symbols);
    tt_free(b->ctx, b->pairs, b->pairs_capacity, sizeof *b->pairs);
    tt_free(b->ctx, b->index.slots, b->index.n_slots, sizeof *b->index.slots);
    tt_free(b->ctx, b->heap, b->heap_capacity, sizeof *b->heap);
    tt_free(b->ctx, b->places, b->places_capacity, sizeof *b->places);
}

static tt_status tti_bpe_count(tti_bpe *b, const char *at, size_t size) {
    tti_word *word = tti_dict_find(&b->pieces, at, size);
    if (!word) { return tti_dict_add(&b->pieces, at, size, 1) ? TT_OK : TT_ERR_MEM; }
    word->value++;
    return TT_OK;
}

/* Reads the text in growing chunks. Only pieces that what follows cannot change are counted; the rest waits.
 * A piece longer than the chunk makes the chunk as long, so that the work of
 * scanning it again stays linear. */
static tt_status tti_bpe_read(tti_bpe *b, const tt_tokenizer *t, tt_text_source text) {
    size_t chunk = (size_t)1 << 16, got = 1;
    tt_text wait = TT_INIT;
    tt_status status = TT_OK;
    wait.ctx = b->ctx;
    while (got > 0) {
        const char *at, *stop;
        tti_scanner scanner;
        TTI_TRY(tti_text_reserve(&wait, chunk));
        got = text.read(text.user, wait.data + wait.size, chunk);
        if (got > chunk) {
            status = tt_fail(b->ctx, TT_ERR_ARG,
                             "tt_tokenizer_train: text.read gave %lu bytes, expected at most %lu",
                             (unsigned long)got, (unsigned long)chunk);
            goto done;
        }
        wait.size += got;
        at = wait.data;
        scanner = tti_scanner_make(&t->unicode, at + wait.size);
        while (at < scanner.end) {
            stop = tti_piece(t->pretokenizer, &scanner, at);
            if (got > 0 && scanner.saw_end) { break; }
            TTI_TRY(tti_bpe_count(b, at, (size_t)(stop - at)));
            at = stop;
        }
        if (at == wait.data && chunk < wait.size) { chunk = wait.size; }
        wait.size = (size_t)(scanner.end - at);
        memmove(wait.data, at, wait.size);
    }
done:
    tt_text_free(&wait);
    return status;
}

/* a before b: more frequent, then the smaller left id, then the smaller right id. */
static int tti_bpe_before(const tti_bpe_pair *a, const tti_bpe_pair *b) {
    if (a->count != b->count) { return a->count > b->count; }
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void tti_bpe_set(tti_bpe *b, size_t at, int32_t pair) {
    b->heap[at] = pair;
    b->pairs[pair].heap_at = at;
}

/* Puts a pair whose count has changed back into its place in the heap. */
static void tti_bpe_sift(tti_bpe *b, int32_t pair) {
    const tti_bpe_pair *moved = &b->pairs[pair];
    const int32_t *heap = b->heap;
    size_t at = moved->heap_at, child;
    while (at > 0 && tti_bpe_before(moved, &b->pairs[heap[(at - 1) / 2]])) {
        tti_bpe_set(b, at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    while ((child = 2 * at + 1) < b->n_pairs) {
        if (child + 1 < b->n_pairs && tti_bpe_before(&b->pairs[heap[child + 1]], &b->pairs[heap[child]])) {
            child++;
        }
        if (!tti_bpe_before(&b->pairs[heap[child]], moved)) { break; }
        tti_bpe_set(b, at, heap[child]);
        at = child;
    }
    tti_bpe_set(b, at, pair);
}

/* Changes a pair's count; a barred pair stays at 0, the bottom of the heap. */
static void tti_bpe_weigh(tti_bpe *b, int32_t pair, int64_t change) {
    if (b->pairs[pair].barred) { return; }
    b->pairs[pair].count += change;
    tti_bpe_sift(b, pair);
}

/* A new pair with no positions yet. */
static tt_status tti_bpe_pair_make(tti_bpe *b, int32_t left, int32_t right, int32_t *made) {
    tti_bpe_pair *pair;
    size_t n = b->n_pairs + 1;
    tt_status status;
    TTI_TRY(tti_grow_array(b->ctx, &b->pairs, &b->pairs_capacity, n, sizeof *pair));
    TTI_TRY(tti_grow_array(b->ctx, &b->heap, &b->heap_capacity, n, sizeof *b->heap));
    TTI_TRY(tti_pair_add(b->ctx, &b->index, left, right, (int32_t)b->n_pairs));
    *made = (int32_t)b->n_pairs;
    pair = &b->pairs[b->n_pairs];
    memset(pair, 0, sizeof *pair);
    pair->left = left;
    pair->right = right;
    pair->first = pair->last = TTI_NOWHERE;
    tti_bpe_set(b, b->n_pairs, *made);
    b->n_pairs++;
    tti_bpe_sift(b, *made);
done:
    return status;
}

/* Enters the pair (symbol, next) into its list. */
static tt_status tti_bpe_link(tti_bpe *b, uint32_t at) {
    tti_symbol *s = &b->symbols[at];
    tti_bpe_pair *pair;
    int32_t place;
    tt_status status = TT_OK;
    if (s->next == TTI_NOWHERE) { return TT_OK; }
    place = tti_pair_find(&b->index, s->id, b->symbols[s->next].id);
    if (place < 0) { TTI_TRY(tti_bpe_pair_make(b, s->id, b->symbols[s->next].id, &place)); }
    s->pair = place;
    pair = &b->pairs[place];
    s->earlier = pair->last;
    s->later = TTI_NOWHERE;
    if (pair->last == TTI_NOWHERE) { pair->first = at; } else { b->symbols[pair->last].later = at; }
    pair->last = at;
    tti_bpe_weigh(b, s->pair, b->pieces.words[s->piece].value);
done:
    return status;
}

/* Takes the pair (symbol, next) out of its list again. */
static void tti_bpe_unlink(tti_bpe *b, uint32_t at) {
    tti_symbol *s = &b->symbols[at];
    tti_bpe_pair *pair;
    if (s->pair < 0) { return; }
    pair = &b->pairs[s->pair];
    if (s->earlier == TTI_NOWHERE) {
        pair->first = s->later;
    } else {
        b->symbols[s->earlier].later = s->later;
    }
    if (s->later == TTI_NOWHERE) {
        pair->last = s->earlier;
    } else {
        b->symbols[s->later].earlier = s->earlier;
    }
    tti_bpe_weigh(b, s->pair, -b->pieces.words[s->piece].value);
    s->pair = -1;
}

/* The symbols of all pieces, one a byte, and their pairs. */
static tt_status tti_bpe_layout(tti_bpe *b, const int32_t byte_id[256]) {
    tt_status status = TT_OK;
    size_t n = b->pieces.bytes.size, i, k;
    if (n >= (size_t)INT32_MAX) {
        return tt_fail(b->ctx, TT_ERR_ARG,
                       "tt_tokenizer_train: different pieces have %lu bytes, expected less than 2^31 - 1",
                       (unsigned long)n);
    }
    b->symbols = (tti_symbol *)tt_alloc(b->ctx, n, sizeof *b->symbols);
    if (!b->symbols) { return TT_ERR_MEM; }
    b->n_symbols = n;
    for (i = 0; i < b->pieces.n; i++) {
        size_t begin = b->pieces.words[i].begin, end = begin + b->pieces.words[i].size;
        for (k = begin; k < end; k++) {
            tti_symbol *s = &b->symbols[k];
            s->id = byte_id[(unsigned char)b->pieces.bytes.data[k]];
            s->pair = -1;
            s->piece = (uint32_t)i;
            s->previous = k > begin ? (uint32_t)(k - 1) : TTI_NOWHERE;
            s->next = k + 1 < end ? (uint32_t)(k + 1) : TTI_NOWHERE;
        }
    }
    for (i = 0; i < n; i++) { TTI_TRY(tti_bpe_link(b, (uint32_t)i)); }
done:
    return status;
}

static int tti_place_order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* The positions of a pair in ascending order, into b->places; *n of them. Most lists are in order already. */
static tt_status tti_bpe_places(tti_bpe *b, int32_t pair, size_t *n) {
    size_t i;
    uint32_t at;
    tt_status status;
    *n = 0;
    for (at = b->pairs[pair].first; at != TTI_NOWHERE; at = b->symbols[at].later) { ++*n; }
    status = tti_grow_array(b->ctx, &b->places, &b->places_capacity, *n, sizeof *b->places);
    if (status != TT_OK) { return status; }
    for (i = 0, at = b->pairs[pair].first; at != TTI_NOWHERE; at = b->symbols[at].later) {
        b->places[i++] = at;
    }
    for (i = 1; i < *n && b->places[i - 1] < b->places[i]; i++) {}
    if (i < *n) { qsort(b->places, *n, sizeof *b->places, tti_place_order); }
    return TT_OK;
}

/* Replaces the pair by the token `id` wherever it occurs; "aaa" becomes "aa a", so
 * the leftmost goes first. */
static tt_status tti_bpe_merge(tti_bpe *b, int32_t pair, int32_t id) {
    size_t n, i;
    tt_status status;
    TTI_TRY(tti_bpe_places(b, pair, &n));
    for (i = 0; i < n; i++) {
        uint32_t at = b->places[i], gone, previous;
        tti_symbol *s = &b->symbols[at];
        if (s->pair != pair) { continue; }           /* overlapped the one before */
        gone = s->next;
        previous = s->previous;
        if (previous != TTI_NOWHERE) { tti_bpe_unlink(b, previous); }
        tti_bpe_unlink(b, at);
        tti_bpe_unlink(b, gone);
        s->id = id;
        s->next = b->symbols[gone].next;
        if (s->next != TTI_NOWHERE) { b->symbols[s->next].previous = at; }
        if (previous != TTI_NOWHERE) { TTI_TRY(tti_bpe_link(b, previous)); }
        TTI_TRY(tti_bpe_link(b, at));
    }
done:
    return status;
}

/* Merges the most frequent pair until the vocabulary is full or no pair is frequent enough. A merge that
 * would spell a special token is barred: only TT_SPECIAL_PARSE may give one. Two merges may spell the same
 * token; so a pair may come back after its merge, which then keeps its first rank. */
static tt_status tti_bpe_train(tti_bpe *b, tt_tokenizer *t, size_t vocab_size, int64_t min_frequency) {
    tt_text bytes = TT_INIT, key = TT_INIT;
    tt_status status = TT_OK;
    bytes.ctx = key.ctx = t->ctx;
    while (t->n_tokens < vocab_size && b->n_pairs > 0) {
        int32_t best = b->heap[0], id = (int32_t)t->n_tokens;
        int32_t left = b->pairs[best].left, right = b->pairs[best].right;
        const tti_word *known;
        if (b->pairs[best].count < min_frequency) { break; }
        bytes.size = 0;
        TTI_TRY(tt_text_append(&bytes, tti_token_bytes(t, &t->tokens[left]), t->tokens[left].size));
        TTI_TRY(tt_text_append(&bytes, tti_token_bytes(t, &t->tokens[right]), t->tokens[right].size));
        TTI_TRY(tti_bytes_to_key(bytes.data, bytes.size, &key));
        if (tti_dict_find(&t->added, key.data, key.size)) {
            tti_bpe_weigh(b, best, -b->pairs[best].count);
            b->pairs[best].barred = 1;
            continue;
        }
        known = tti_dict_find(&t->vocab, bytes.data, bytes.size);
        if (known) {
            id = (int32_t)known->value;
        } else {
            TTI_TRY(tti_token_add(t, id, bytes.data, bytes.size, TTI_IN_MODEL));
        }
        if (tti_pair_find(&t->ranks, left, right) < 0) { TTI_TRY(tti_merge_add(t, left, right, id)); }
        TTI_TRY(tti_bpe_merge(b, best, id));
    }
done:
    tt_text_free(&bytes);
    tt_text_free(&key);
    return status;
}

/* Special tokens get the first ids. None may be what a byte is called in tokenizer.json: both would be one
 * entry. */
static tt_status tti_train_special(tt_tokenizer *t, const tt_tokenizer_desc *desc) {
    static const char byte_name[] = "the name of a byte in tokenizer.json, expected a longer text";
    const int flags = TTI_ADDED | TTI_SPECIAL | TTI_IN_MODEL;
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < desc->n_special_tokens; i++) {
        const char *content = desc->special_tokens[i], *wrong = NULL,
                   *end = content ? content + strlen(content) : NULL;
        uint32_t c = 0;
        if (content == end) {
            wrong = "empty, expected a text";
        } else if (tti_utf8_invalid(content, end) < end) {
            wrong = "no valid UTF-8";
        } else if (content + tti_utf8(content, end, &c) == end && tti_char_byte(c) >= 0) {
            wrong = byte_name;
        } else if (tti_dict_find(&t->added, content, (size_t)(end - content))) {
            wrong = "there twice";
        }
        if (wrong) {
            return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: special_tokens[%d] is %s", i, wrong);
        }
        TTI_TRY(tti_token_add(t, i, content, (size_t)(end - content), flags));
    }
done:
    return status;
}

/* One token per byte of the alphabet, in the order of the bytes' characters. Special tokens may be read as
 * text, so their bytes belong to it. */
static tt_status tti_train_alphabet(tt_tokenizer *t, const tti_dict *pieces, const tt_tokenizer_desc *desc,
                                    size_t vocab_size) {
    unsigned char seen[256];
    size_t i, need = t->n_tokens;
    tt_status status = TT_OK;
    int c, b;
    memset(seen, desc->all_bytes ? 1 : 0, sizeof seen);
    for (i = 0; i < pieces->bytes.size; i++) { seen[(unsigned char)pieces->bytes.data[i]] = 1; }
    for (c = 0; c < desc->n_special_tokens; c++) {
        const char *at;
        for (at = desc->special_tokens[c]; *at; at++) { seen[(unsigned char)*at] = 1; }
    }
    for (i = 0; i < 256; i++) { need += seen[i]; }
    if (need > vocab_size) {
        return tt_fail(
            t->ctx, TT_ERR_ARG,
            "tt_tokenizer_train: vocab_size is %lu, expected at least %lu: %lu special tokens and %lu bytes",
            (unsigned long)vocab_size, (unsigned long)need, (unsigned long)t->n_tokens,
            (unsigned long)(need - t->n_tokens));
    }
    for (c = 0; c < 324; c++) {
        char byte;
        b = tti_char_byte((uint32_t)c);
        byte = (char)b;
        if (b >= 0 && seen[b]) { TTI_TRY(tti_token_add(t, (int32_t)t->n_tokens, &byte, 1, TTI_IN_MODEL)); }
    }
done:
    return status;
}

/* A list of words in the place of a text: each is a piece. */
typedef struct tti_word_list { const char *const *words; int n; } tti_word_list;

/* Each word is counted as one piece, so that training makes one token of it. */
static tt_status tti_words_count(tti_bpe *b, const tti_word_list *list) {
    tt_status status = TT_OK;
    int i;
    if (list->n < 0 || (list->n > 0 && !list->words)) {
        return tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_words: n is %d, expected the number of words",
                       list->n);
    }
    for (i = 0; i < list->n; i++) {
        const char *word = list->words[i];
        if (!word || !*word) {
            return tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_words: words[%d] is empty, expected a text", i);
        }
        TTI_TRY(tti_bpe_count(b, word, strlen(word)));
    }
done:
    return status;
}

/* Each word is one token. */
static tt_status tti_words_check(const tt_tokenizer *t, const tti_word_list *list) {
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    int i;
    ids.ctx = t->ctx;
    for (i = 0; i < list->n; i++) {
        const char *word = list->words[i];
        ids.size = 0;
        TTI_TRY(tt_encode(t, word, strlen(word), TT_SPECIAL_TEXT, &ids));
        if (ids.size == 1) { continue; }
        status = tt_fail(t->ctx, TT_ERR_ARG,
                         "tt_tokenizer_words: words[%d] is \"%.60s\", which is %lu tokens, expected a "
                         "word with a space at most before it",
                         i, word, (unsigned long)ids.size);
        goto done;
    }
done:
    tt_ids_free(&ids);
    return status;
}

/* Before any text is read, so that a mistake costs no minutes. */
static tt_status tti_train_check(tt_context *ctx, const tt_tokenizer_desc *d) {
    static const char *const names[] = {"vocab_size", "n_special_tokens"};
    int values[2], i;
    values[0] = d->vocab_size;
    values[1] = d->n_special_tokens;
    for (i = 0; i < 2; i++) {
        if (values[i] >= 0 && values[i] <= TTI_MAX_VOCAB) { continue; }
        return tt_fail(ctx, TT_ERR_ARG, "tt_tokenizer_train: %s is %d, expected 0 to %d", names[i], values[i],
                       TTI_MAX_VOCAB);
    }
    if (d->min_frequency < 0) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_tokenizer_train: min_frequency is %d, expected >= 0",
                       d->min_frequency);
    }
    if ((int)d->pretokenizer < 0 || d->pretokenizer > TT_PRETOKENIZE_TEKKEN) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_tokenizer_train: pretokenizer is %d, expected a tt_pretokenizer",
                       (int)d->pretokenizer);
    }
    if (d->n_special_tokens > 0 && !d->special_tokens) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_tokenizer_train: special_tokens is NULL, expected %d texts",
                       d->n_special_tokens);
    }
    return TT_OK;
}

/* From a text, or from a list of words if there is one. */
static tt_status tti_train(tt_tokenizer *t, tti_bpe *b, const tt_tokenizer_desc *desc, tt_text_source text,
                           const tti_word_list *list) {
    size_t vocab_size = desc->vocab_size ? (size_t)desc->vocab_size : 32000;
    tt_status status;
    TTI_TRY(tti_train_check(t->ctx, desc));
    if (!text.read && !list) {
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: text.read is NULL, expected a function");
    }
    t->pretokenizer = (int)(desc->pretokenizer ? desc->pretokenizer : TT_PRETOKENIZE_GPT2);
    TTI_TRY(tti_train_special(t, desc));
    TTI_TRY(list ? tti_words_count(b, list) : tti_bpe_read(b, t, text));
    TTI_TRY(tti_train_alphabet(t, &b->pieces, desc, vocab_size));
    tti_tokenizer_finish(t);                         /* for byte_id */
    TTI_TRY(tti_bpe_layout(b, t->byte_id));
    TTI_TRY(tti_bpe_train(b, t, vocab_size, desc->min_frequency ? desc->min_frequency : 2));
    tti_tokenizer_finish(t);
    TTI_TRY(tti_added_index(t));
    if (list) { TTI_TRY(tti_words_check(t, list)); }
    if (!list && t->n_tokens == 0) {
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: the text is empty: it gives no token");
    }
done:
    return status;
}

static tt_tokenizer *tti_trained(tt_context *ctx, const tt_tokenizer_desc *desc, tt_text_source text,
                                 const tti_word_list *list) {
    tt_tokenizer *t = tti_tokenizer_create(ctx);
    tti_bpe b;
    if (!t) { return NULL; }
    memset(&b, 0, sizeof b);
    b.ctx = b.pieces.bytes.ctx = ctx;
    if (tti_train(t, &b, desc, text, list) != TT_OK) {
        tt_tokenizer_destroy(t);
        t = NULL;
    }
    tti_bpe_free(&b);
    return (tt_tokenizer *)tti_made(ctx, "tt_tokenizer_train", t);
}

TT_API tt_tokenizer *tt_tokenizer_train(tt_context *ctx, const tt_tokenizer_desc *desc, tt_text_source text) {
    static const tt_tokenizer_desc defaults = TT_INIT;
    return tti_trained(ctx, desc ? desc : &defaults, text, NULL);
}

TT_API tt_tokenizer *tt_tokenizer_words(tt_context *ctx, const tt_tokenizer_desc *desc_or_null,
                                        const char *const *words, int n) {
    tt_tokenizer_desc desc = TT_INIT;
    tt_text_source none;
    tti_word_list list;
    none.read = NULL;
    none.user = NULL;
    list.words = words;
    list.n = n;
    if (desc_or_null) { desc = *desc_or_null; }
    if (desc.min_frequency == 0) { desc.min_frequency = 1; }
    if (desc.pretokenizer == 0) { desc.pretokenizer = TT_PRETOKENIZE_WHITESPACE; }
    return tti_trained(ctx, &desc, none, &list);
}

/* ==== 7. model =============================================================================
 * A model is a list of named parameters and one forward function. The list is in file order and owns;
 * tti_layer points into it by role, and a NULL role is a switch that is off: no bias, no gate, no adapter.
 * The two families (Llama and its relatives, GPT-2) share everything but three places: what stands before the
 * first layer (GPT-2 adds learned positions), the norm, and how queries, keys and values and the inner
 * activations of the MLP come about. It uses the ops of chapter 5 on the batches and caches of chapter 4;
 * where the weights come from, and in whose memory they lie, is not its business (chapter 8 reads files). */

/* ---- [tt:model.types] what a model holds ---- */

/* A matrix of a layer with its bias and its adapter (lora_a [rank, in], lora_b [out, rank]). w is [out, in];
 * GPT-2's is [in, out], its q, k and v are one matrix (TTI_QKV), and its "up" is c_fc, without a gate. */
typedef struct tti_matrix { tt_tensor *w, *bias, *lora_a, *lora_b; } tti_matrix;
enum { TTI_QKV, TTI_Q, TTI_K, TTI_V, TTI_O, TTI_GATE, TTI_UP, TTI_DOWN, TTI_N_MATRICES };

typedef struct tti_layer {
    tt_tensor *norm1, *norm1_bias, *norm2, *norm2_bias;
    tt_tensor *q_norm, *k_norm;
    tti_matrix matrix[TTI_N_MATRICES];
    int use_rope;
} tti_layer;

/* generation_config.json. text: as it was read, to be written again; NULL = there was none. */
typedef struct tti_generation {
    char *text;
    int do_sample, top_k, n_stops;
    float temperature, top_p, min_p, repetition_penalty;   /* 0 = not given */
    int32_t stops[TT_MAX_MORE_EOS + 1];
} tti_generation;

struct tt_model {
    tt_context *ctx;
    tt_model_config config;
    int n_params, n_base, max_params;   /* params[n_base ..] are adapters                                  */
    tt_tensor **params;                 /* owned, in file order                                            */
    tti_layer *layers;                  /* [num_hidden_layers]                                             */
    tt_tensor *embedding, *positions;   /* [V,C]; [max_position_embeddings,C] of gpt2                      */
    tt_tensor *norm, *norm_bias;
    tt_tensor *head;                    /* [V,C]; the embedding if tied                                    */
    tt_tensor *cos_table, *sin_table;   /* [positions used so far, head_dim/2]; NULL before, and in gpt2   */
    tt_lora_desc lora;                  /* rank 0 = no adapters; target_modules = lora_targets             */
    char **lora_targets;                /* owned copies                                                    */
    float lora_scale;
    int lora_off;
    void *lent_to;                      /* owner of the memory that `lent` tensors lie in, or NULL         */
    void (*release)(void *lent_to);     /* ends the loan, once the parameters are gone                     */
    tti_generation generation;
    char *chat_template;                /* of the directory, to be written again; NULL = none              */
};

static int tti_model_n_matrices(const tt_model *m) { return m->config.num_hidden_layers * TTI_N_MATRICES; }

/* Matrix i of all layers, in their order; w is NULL where the family has none in this role. */
static tti_matrix *tti_model_matrix(const tt_model *m, int i) {
    return &m->layers[i / TTI_N_MATRICES].matrix[i % TTI_N_MATRICES];
}

/* ---- [tt:model.config] defaults, and what later code relies on ---- */

/* What must hold, or else the sentence of an error: as TTI_TRY, in a function with ctx and who, its name. */
#define TTI_EXPECT(holds, sentence, ...)                                          \
    do {                                                                          \
        if (holds) { break; }                                                     \
        status = tt_fail(ctx, TT_ERR_ARG, "%s: " sentence, who, __VA_ARGS__);     \
        goto done;                                                                \
    } while (0)

static int tti_is_qwen(const tt_model_config *c) { return strncmp(c->model_type, "qwen", 4) == 0; }

/* Each num_attention_heads / num_key_value_heads query heads read one key-value head, all of head_dim. */
static tt_status tti_config_heads(tt_context *ctx, tt_model_config *c) {
    static const char *const who = "tt_model_config";
    int heads = c->num_attention_heads, kv_heads = c->num_key_value_heads ? c->num_key_value_heads : heads;
    int hidden = c->hidden_size, dim = c->head_dim, most = INT_MAX / 16;
    tt_status status = TT_OK;
    TTI_EXPECT(heads >= 1, "num_attention_heads is %d, expected >= 1", heads);
    TTI_EXPECT(dim != 0 || hidden % heads == 0,
               "hidden_size is %d, expected a multiple of num_attention_heads %d", hidden, heads);
    if (dim == 0) { dim = hidden / heads; }
    TTI_EXPECT(dim >= 1 && dim <= 1024 && (c->gpt2 || dim % 2 == 0),
               "head_dim is %d, expected an even number in 2..1024", dim);
    TTI_EXPECT(heads <= most / dim, "num_attention_heads is %d, expected at most %d with head_dim %d", heads,
               most / dim, dim);
    TTI_EXPECT(kv_heads >= 1 && heads % kv_heads == 0,
               "num_key_value_heads is %d, expected a divisor of num_attention_heads %d", kv_heads, heads);
    TTI_EXPECT(!c->gpt2 || (kv_heads == heads && dim * heads == hidden),
               "gpt2 wants as many key-value heads as heads (%d, %d) and head_dim %d = hidden_size / heads",
               kv_heads, heads, dim);
    c->head_dim = dim;
    c->num_key_value_heads = kv_heads;
done:
    return status;
}

static int tti_rope_scaling_ok(const tt_rope_scaling *s) {
    if (s->factor == 0) { return 1; }
    return s->factor > 0 && isfinite(s->factor) && s->low_freq_factor > 0 &&
           s->high_freq_factor > s->low_freq_factor && s->original_max_position_embeddings > 0;
}

/* Fills in defaults. Sizes stay below INT_MAX / 16, so that four times one, or a few added, fit an int. */
static tt_status tti_config_resolve(tt_context *ctx, tt_model_config *c) {
    static const char *const who = "tt_model_config";
    const tt_rope_scaling *s = &c->rope_scaling;
    int most = INT_MAX / 16, hidden = c->hidden_size, layers = c->num_hidden_layers, more = c->n_more_eos;
    int inner;
    tt_status status;
    if (!c->model_type[0]) {
        snprintf(c->model_type, sizeof c->model_type, "%s", c->gpt2 ? "gpt2" : "llama");
    }
    TTI_EXPECT(c->vocab_size >= 1, "vocab_size is %d, expected >= 1", c->vocab_size);
    TTI_EXPECT(hidden >= 1 && hidden <= most, "hidden_size is %d, expected 1..%d", hidden, most);
    TTI_EXPECT(layers >= 1 && layers <= 1024, "num_hidden_layers is %d, expected 1..1024", layers);
    TTI_TRY(tti_config_heads(ctx, c));
    inner = c->gpt2 ? 4 * hidden : (hidden * 8 / 3 + 31) / 32 * 32;
    if (c->intermediate_size == 0) { c->intermediate_size = inner; }
    TTI_EXPECT(c->intermediate_size >= 1 && c->intermediate_size <= most,
               "intermediate_size is %d, expected 1..%d", c->intermediate_size, most);
    if (c->max_position_embeddings == 0) { c->max_position_embeddings = 2048; }
    TTI_EXPECT(c->max_position_embeddings >= 1, "max_position_embeddings is %d, expected >= 1",
               c->max_position_embeddings);
    if (c->norm_eps == 0) { c->norm_eps = tti_is_qwen(c) ? 1e-6f : 1e-5f; }
    if (c->rope_theta == 0) { c->rope_theta = 10000.0f; }
    TTI_EXPECT(c->norm_eps > 0 && c->rope_theta > 0 && isfinite(c->norm_eps) && isfinite(c->rope_theta),
               "norm_eps is %g and rope_theta %g, expected both > 0", (double)c->norm_eps,
               (double)c->rope_theta);
    TTI_EXPECT(tti_rope_scaling_ok(s),
               "rope_scaling has factor %g, low_freq_factor %g, high_freq_factor %g and "
               "original_max_position_embeddings %d, expected factor > 0, 0 < low < high and a context",
               (double)s->factor, (double)s->low_freq_factor, (double)s->high_freq_factor,
               s->original_max_position_embeddings);
    TTI_EXPECT(more >= 0 && more <= TT_MAX_MORE_EOS && (more == 0 || c->eos_token_id >= 0),
               "n_more_eos is %d, expected 0..%d, and 0 without eos_token_id", more, TT_MAX_MORE_EOS);
    TTI_EXPECT(c->no_rope_interval >= 0, "no_rope_interval is %d, expected >= 0", c->no_rope_interval);
    /* Longer than the model, no layer is without RoPE: there is one way to say so. */
    if (c->no_rope_interval > layers) { c->no_rope_interval = 0; }
done:
    return status;
}

/* Without a generation_config.json, texts end as config.json says. */
static void tti_generation_of_config(const tt_model_config *c, tti_generation *g) {
    int i;
    memset(g, 0, sizeof *g);
    if (c->eos_token_id >= 0) { g->stops[g->n_stops++] = c->eos_token_id; }
    for (i = 0; i < c->n_more_eos; i++) { g->stops[g->n_stops++] = c->more_eos[i]; }
}

/* ---- [tt:model.parameters] one parameter: a name, a shape, and what it starts from ----
 * Every parameter has a random stream of its own, named by the parameter: to add one changes no other. */

typedef enum tti_init {
    TTI_ZEROS,      /* biases, and an adapter's B                                                   */
    TTI_ONES,       /* norm weights                                                                 */
    TTI_NORMAL,     /* N(0, std^2); std of a layer's matrix is 1/sqrt(in), in GPT-2 0.02            */
    TTI_RESIDUAL,   /* the same, of a matrix that writes to the residual stream: std/sqrt(2 layers) */
    TTI_UNIFORM     /* U(-1, 1) / sqrt(columns): an adapter's A                                     */
} tti_init;
typedef struct tti_param_spec {
    const char *name;
    int rows, cols;     /* cols 0: a vector [rows] */
    tti_init init;
    double std;         /* of TTI_NORMAL and TTI_RESIDUAL, as it is used */
} tti_param_spec;

/* Values are drawn in the order of memory, the same on every backend (on a GPU to a float's last bit). */
static tt_status tti_param_fill(tt_tensor *t, uint64_t seed, const tti_param_spec *spec) {
    const tt_backend *backend = t->ctx->backend;
    tt_rng rng = TT_INIT;
    float *values;
    tt_status status;
    size_t i;
    rng.seed = seed;
    rng.stream = tt_hash(spec->name, strlen(spec->name), 0);
    if (backend->normal && (spec->init == TTI_NORMAL || spec->init == TTI_RESIDUAL)) {
        return backend->normal(t->ctx, TT_F(t), t->size, seed, rng.stream, spec->std);
    }
    values = (float *)tt_alloc(t->ctx, t->size, sizeof *values);
    if (!values) { return TT_ERR_MEM; }
    for (i = 0; i < t->size; i++) {
        double x = spec->init == TTI_ONES ? 1.0
                 : spec->init == TTI_UNIFORM ? (2.0 * tt_rng_uniform(&rng) - 1.0) / sqrt((double)spec->cols)
                 : spec->std * tt_rng_normal(&rng);
        values[i] = (float)x;
    }
    status = tt_tensor_set(t, values);
    tt_free(t->ctx, values, t->size, sizeof *values);
    return status;
}

/* Adds a parameter to the list. seed NULL: it gets no data yet, for a caller that fills them all from a file
 * or another model, and compares a file's shapes before memory is asked for. */
static tt_tensor *tti_param_new(tt_model *m, const uint64_t *seed, const tti_param_spec *spec) {
    int ndim = spec->cols ? 2 : 1, shape[2];
    tt_tensor *t;
    shape[0] = spec->rows;
    shape[1] = spec->cols;
    t = seed ? tt_parameter(m->ctx, ndim, shape, spec->name)
             : tti_tensor_shell(m->ctx, TT_F32, ndim, shape, spec->name);
    if (!t) { return NULL; }
    t->requires_grad = 1;
    m->params[m->n_params++] = t;
    if (!seed || spec->init == TTI_ZEROS) { return t; }
    return tti_param_fill(t, *seed, spec) == TT_OK ? t : NULL;
}

static tt_status tti_param_alloc(tt_tensor *t) {
    if (!t->data) { t->data = t->ctx->backend->alloc(t->ctx, tti_tensor_bytes(t)); }
    return t->data ? TT_OK : TT_ERR_MEM;
}

/* ---- [tt:model.layers] the parameters of the two families ----
 * One row a parameter of a layer, in file order: where tti_layer points to it, its shape in the dimensions of
 * the config, what it starts from, and its name behind the layer's; TTI_ROW_IF: only if that field of the
 * config is not 0. */

enum { TTI_DIM_NONE, TTI_DIM_HIDDEN, TTI_DIM_INNER, TTI_DIM_HEAD, TTI_DIM_QUERY, TTI_DIM_KEY, TTI_DIM_QKV };
typedef struct tti_layer_row {
    size_t role;
    int rows, cols;
    tti_init init;
    size_t condition;
    const char *name;
} tti_layer_row;
#define TTI_LAYER_PARAMS (20 + 2 * TTI_N_MATRICES)     /* room for one layer's, with adapters */

#define TTI_ROW_IF(condition, role, rows, cols, init, name)                            \
    {offsetof(tti_layer, role), TTI_DIM_##rows, TTI_DIM_##cols, TTI_##init,            \
     offsetof(tt_model_config, condition), name}
#define TTI_ROW(role, rows, cols, init, name)           /* vocab_size is never 0 */    \
    {offsetof(tti_layer, role), TTI_DIM_##rows, TTI_DIM_##cols, TTI_##init,            \
     offsetof(tt_model_config, vocab_size), name}

static const tti_layer_row tti_llama_rows[] = {      /* model.layers.N. */
    TTI_ROW(norm1,                  HIDDEN, NONE,   ONES,     "input_layernorm.weight"),
    TTI_ROW(matrix[TTI_Q].w,        QUERY,  HIDDEN, NORMAL,   "self_attn.q_proj.weight"),
    TTI_ROW(matrix[TTI_K].w,        KEY,    HIDDEN, NORMAL,   "self_attn.k_proj.weight"),
    TTI_ROW(matrix[TTI_V].w,        KEY,    HIDDEN, NORMAL,   "self_attn.v_proj.weight"),
    TTI_ROW(matrix[TTI_O].w,        HIDDEN, QUERY,  RESIDUAL, "self_attn.o_proj.weight"),
    TTI_ROW_IF(attention_bias, matrix[TTI_Q].bias, QUERY, NONE, ZEROS, "self_attn.q_proj.bias"),
    TTI_ROW_IF(attention_bias, matrix[TTI_K].bias, KEY, NONE, ZEROS, "self_attn.k_proj.bias"),
    TTI_ROW_IF(attention_bias, matrix[TTI_V].bias, KEY, NONE, ZEROS, "self_attn.v_proj.bias"),
    TTI_ROW_IF(attention_out_bias, matrix[TTI_O].bias, HIDDEN, NONE, ZEROS, "self_attn.o_proj.bias"),
    TTI_ROW_IF(qk_norm, q_norm, HEAD, NONE, ONES, "self_attn.q_norm.weight"),
    TTI_ROW_IF(qk_norm, k_norm, HEAD, NONE, ONES, "self_attn.k_norm.weight"),
    TTI_ROW(norm2,                  HIDDEN, NONE,   ONES,     "post_attention_layernorm.weight"),
    TTI_ROW(matrix[TTI_GATE].w,     INNER,  HIDDEN, NORMAL,   "mlp.gate_proj.weight"),
    TTI_ROW(matrix[TTI_UP].w,       INNER,  HIDDEN, NORMAL,   "mlp.up_proj.weight"),
    TTI_ROW(matrix[TTI_DOWN].w,     HIDDEN, INNER,  RESIDUAL, "mlp.down_proj.weight"),
    TTI_ROW_IF(mlp_bias, matrix[TTI_GATE].bias, INNER, NONE, ZEROS, "mlp.gate_proj.bias"),
    TTI_ROW_IF(mlp_bias, matrix[TTI_UP].bias, INNER, NONE, ZEROS, "mlp.up_proj.bias"),
    TTI_ROW_IF(mlp_bias, matrix[TTI_DOWN].bias, HIDDEN, NONE, ZEROS, "mlp.down_proj.bias"),
    {0, 0, 0, TTI_ZEROS, 0, NULL}};

static const tti_layer_row tti_gpt2_rows[] = {       /* transformer.h.N.; matrices are [in, out] */
    TTI_ROW(norm1,                  HIDDEN, NONE,   ONES,     "ln_1.weight"),
    TTI_ROW(norm1_bias,             HIDDEN, NONE,   ZEROS,    "ln_1.bias"),
    TTI_ROW(matrix[TTI_QKV].w,      HIDDEN, QKV,    NORMAL,   "attn.c_attn.weight"),
    TTI_ROW(matrix[TTI_QKV].bias,   QKV,    NONE,   ZEROS,    "attn.c_attn.bias"),
    TTI_ROW(matrix[TTI_O].w,        HIDDEN, HIDDEN, RESIDUAL, "attn.c_proj.weight"),
    TTI_ROW(matrix[TTI_O].bias,     HIDDEN, NONE,   ZEROS,    "attn.c_proj.bias"),
    TTI_ROW(norm2,                  HIDDEN, NONE,   ONES,     "ln_2.weight"),
    TTI_ROW(norm2_bias,             HIDDEN, NONE,   ZEROS,    "ln_2.bias"),
    TTI_ROW(matrix[TTI_UP].w,       HIDDEN, INNER,  NORMAL,   "mlp.c_fc.weight"),
    TTI_ROW(matrix[TTI_UP].bias,    INNER,  NONE,   ZEROS,    "mlp.c_fc.bias"),
    TTI_ROW(matrix[TTI_DOWN].w,     INNER,  HIDDEN, RESIDUAL, "mlp.c_proj.weight"),
    TTI_ROW(matrix[TTI_DOWN].bias,  HIDDEN, NONE,   ZEROS,    "mlp.c_proj.bias"),
    {0, 0, 0, TTI_ZEROS, 0, NULL}};
#undef TTI_ROW
#undef TTI_ROW_IF

static int tti_config_dim(const tt_model_config *c, int dim) {
    switch (dim) {
    case TTI_DIM_HIDDEN: return c->hidden_size;
    case TTI_DIM_INNER: return c->intermediate_size;
    case TTI_DIM_HEAD: return c->head_dim;
    case TTI_DIM_QUERY: return c->num_attention_heads * c->head_dim;
    case TTI_DIM_KEY: return c->num_key_value_heads * c->head_dim;
    case TTI_DIM_QKV: return 3 * c->hidden_size;
    default: return 0;
    }
}

/* Layer n by the rows of its family's table; a row whose condition is 0 in the config has no parameter. What
 * writes to the residual stream begins smaller: Radford et al. 2019 (GPT-2), section 2.3. */
static int tti_layer_params(tt_model *m, const uint64_t *seed, int n) {
    const tt_model_config *c = &m->config;
    const tti_layer_row *row;
    char name[96];
    for (row = c->gpt2 ? tti_gpt2_rows : tti_llama_rows; row->name; row++) {
        tt_tensor **role = (tt_tensor **)(void *)((char *)&m->layers[n] + row->role);
        tti_param_spec spec;
        if (!*(const int *)(const void *)((const char *)c + row->condition)) { continue; }
        snprintf(name, sizeof name, c->gpt2 ? "transformer.h.%d.%s" : "model.layers.%d.%s", n, row->name);
        spec.name = name;
        spec.rows = tti_config_dim(c, row->rows);
        spec.cols = tti_config_dim(c, row->cols);
        spec.init = row->init;
        spec.std = c->gpt2 ? 0.02 : spec.cols ? 1.0 / sqrt((double)spec.cols) : 0;
        if (row->init == TTI_RESIDUAL) { spec.std /= sqrt(2.0 * c->num_hidden_layers); }
        *role = tti_param_new(m, seed, &spec);
        if (!*role) { return 0; }
    }
    m->layers[n].use_rope = !c->gpt2 && !(c->no_rope_interval && (n + 1) % c->no_rope_interval == 0);
    return 1;
}

/* Parameters are numbered from the embedding upwards; a tied head is the embedding itself. */
static int tti_model_params(tt_model *m, const uint64_t *seed) {
    const tt_model_config *c = &m->config;
    int gpt2 = c->gpt2, tied = c->tie_word_embeddings, hidden = c->hidden_size, n;
    int context = c->max_position_embeddings;
    tti_param_spec embedding = {NULL, c->vocab_size, hidden, TTI_NORMAL, gpt2 || tied ? 0.02 : 1.0};
    tti_param_spec positions = {"transformer.wpe.weight", context, hidden, TTI_NORMAL, 0.02};
    tti_param_spec norm = {NULL, hidden, 0, TTI_ONES, 0};
    tti_param_spec norm_bias = {"transformer.ln_f.bias", hidden, 0, TTI_ZEROS, 0};
    tti_param_spec head = {"lm_head.weight", c->vocab_size, hidden, TTI_NORMAL, 0.02};
    embedding.name = gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight";
    norm.name = gpt2 ? "transformer.ln_f.weight" : "model.norm.weight";
    m->embedding = tti_param_new(m, seed, &embedding);
    if (!m->embedding) { return 0; }
    if (gpt2 && !(m->positions = tti_param_new(m, seed, &positions))) { return 0; }
    for (n = 0; n < c->num_hidden_layers; n++) {
        if (!tti_layer_params(m, seed, n)) { return 0; }
    }
    m->norm = tti_param_new(m, seed, &norm);
    if (!m->norm || (gpt2 && !(m->norm_bias = tti_param_new(m, seed, &norm_bias)))) { return 0; }
    m->head = tied ? m->embedding : tti_param_new(m, seed, &head);
    return m->head != NULL;
}

/* ---- [tt:model.rope] rotary tables ----
 * The angle of pair i at position p is p * theta^(-2i/head_dim), in single precision as in the reference
 * implementations. Llama 3.1 slows low frequencies down by `factor`, with a smooth passage between the two
 * wave lengths that its other factors name.
 * Source: RoFormer, arXiv 2104.09864, eq. 15; transformers, modeling_rope_utils.py, rope_type "llama3". */

static float tti_rope_frequency(const tt_model_config *c, int i) {
    const tt_rope_scaling *s = &c->rope_scaling;
    double f = 1.0 / pow((double)c->rope_theta, 2.0 * i / c->head_dim), turns, smooth;
    if (s->factor == 0) { return (float)f; }
    turns = s->original_max_position_embeddings * f / 6.283185307179586;     /* within the original context */
    if (turns < s->low_freq_factor) { return (float)(f / s->factor); }
    if (turns > s->high_freq_factor) { return (float)f; }
    smooth = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (float)((1.0 - smooth) * f / s->factor + smooth * f);
}

/* [n, head_dim/2] values fn(angle), or NULL. */
static tt_tensor *tti_rope_table(const tt_model *m, int n, double (*fn)(double), const char *name) {
    tt_context *ctx = m->ctx;
    int half = m->config.head_dim / 2, shape[2], p, i;
    size_t size = (size_t)n * (size_t)half;
    float *values = (float *)tt_alloc(ctx, size, sizeof *values);
    tt_tensor *t;
    shape[0] = n;
    shape[1] = half;
    t = values ? tt_tensor_create(ctx, TT_F32, 2, shape, name) : NULL;
    for (i = 0; t && i < half; i++) {
        float frequency = tti_rope_frequency(&m->config, i);
        for (p = 0; p < n; p++) {
            float angle = (float)p * frequency;
            values[(size_t)p * (size_t)half + (size_t)i] = (float)fn((double)angle);
        }
    }
    if (t && tt_tensor_set(t, values) != TT_OK) {
        tt_tensor_destroy(t);
        t = NULL;
    }
    tt_free(ctx, values, size, sizeof *values);
    return t;
}

/* The tensor stays where it is, for the tape points to it; only its content changes. */
static void tti_rope_put(tt_tensor **table, tt_tensor *longer) {
    tt_tensor old;
    if (!*table) {
        *table = longer;
        return;
    }
    old = **table;
    **table = *longer;
    *longer = old;
    tt_tensor_destroy(longer);
}

/* The tables reach as far as positions have been used, in powers of two: a model may promise millions. A
 * longer table begins with the same numbers. Caches ask for their whole length, so that nothing grows while a
 * backend holds launches back. */
static tt_status tti_rope_reserve(tt_model *m, int n_positions) {
    int most = m->config.max_position_embeddings, n = 64;
    tt_tensor *cosines, *sines;
    if (m->config.gpt2 || (m->cos_table && n_positions <= m->cos_table->shape[0])) { return TT_OK; }
    while (n < n_positions && n <= most / 2) { n *= 2; }
    if (n < n_positions || n > most) { n = most; }
    if (m->cos_table && n <= m->cos_table->shape[0]) { return TT_OK; }   /* a cache longer than the context */
    cosines = tti_rope_table(m, n, cos, "rope.cos");
    sines = cosines ? tti_rope_table(m, n, sin, "rope.sin") : NULL;
    if (!sines) {
        tt_tensor_destroy(cosines);
        return tt_error_status(m->ctx);
    }
    tti_rope_put(&m->cos_table, cosines);
    tti_rope_put(&m->sin_table, sines);
    return TT_OK;
}

/* A cache knows nothing of models but its sizes; the rotary tables reach to its end from here on. */
static tt_kv_cache *tti_model_cache(tt_model *model, tt_kv_cache *sizes) {
    tt_kv_cache *cache;
    sizes->n_layers = model->config.num_hidden_layers;
    sizes->n_heads = model->config.num_key_value_heads;
    sizes->width = sizes->n_heads * model->config.head_dim;
    cache = tti_cache_create(model->ctx, sizes);
    if (!cache || tti_rope_reserve(model, sizes->capacity) == TT_OK) { return cache; }
    tt_kv_cache_destroy(cache);
    return NULL;
}

TT_API tt_kv_cache *tt_kv_cache_create(tt_model *model, int n_slots, int capacity) {
    tt_kv_cache sizes = TT_INIT;
    sizes.n_slots = n_slots;
    sizes.capacity = capacity;
    return tti_model_cache(model, &sizes);
}

/* ---- [tt:model.forward] forward ----
 * With x [N,C] the residual stream of all tokens of a batch, N of them:
 *     x = embedding[tokens] (+ positions[positions])
 *     x = x + O(attention(rope(Q(norm1(x))), rope(K(norm1(x))), V(norm1(x))))        each layer
 *     x = x + down(silu(gate(norm2(x))) * up(norm2(x)))          GPT-2: x + down(gelu(up(norm2(x))))
 *     logits = head(norm(x))
 * Source: Llama, arXiv 2302.13971, sec. 2.2; GPT-2, Radford et al. 2019, 2.3; Qwen3, arXiv 2505.09388. */

static tt_tensor *tti_norm_apply(const tt_model *m, tt_tensor *x, tt_tensor *w, tt_tensor *bias) {
    float eps = m->config.norm_eps;
    return bias ? tt_layernorm(m->ctx, x, w, bias, eps) : tt_rmsnorm(m->ctx, x, w, eps);
}

/* RMSNorm over each head's own channels, x [N, heads * head_dim] (Qwen3). */
static tt_tensor *tti_head_norm(const tt_model *m, tt_tensor *x, tt_tensor *w) {
    int heads[2], flat[2];
    if (!w || !x) { return x; }
    flat[0] = x->shape[0];
    flat[1] = x->shape[1];
    heads[0] = (int)(x->size / (size_t)m->config.head_dim);
    heads[1] = m->config.head_dim;
    x = tt_rmsnorm(m->ctx, tt_view(m->ctx, x, 2, heads), w, m->config.norm_eps);
    return tt_view(m->ctx, x, 2, flat);
}

static int tti_adapts(const tt_model *m, const tti_matrix *a) { return a->lora_a && !m->lora_off; }

/* x W^T + b (GPT-2: x W + b), and what an adapter adds to it: scale (x A^T) B^T. */
static tt_tensor *tti_matrix_apply(const tt_model *m, tt_tensor *x, const tti_matrix *a) {
    tt_context *ctx = m->ctx;
    tt_tensor *y = m->config.gpt2 ? tt_matmul(ctx, x, a->w, a->bias) : tt_linear(ctx, x, a->w, a->bias);
    if (!tti_adapts(m, a)) { return y; }
    x = tt_scale(ctx, tt_linear(ctx, x, a->lora_a, NULL), m->lora_scale);
    return tti_product_add(ctx, y, x, a->lora_b);
}

/* x [N,C] to [N,C]. q is [N, heads * head_dim], k and v [N, kv_heads * head_dim]; in a batch with a cache,
 * tt_attention puts k and v there and reads those of all earlier positions. */
static tt_tensor *tti_attention_block(const tt_model *m, int layer, tt_tensor *x, const tt_batch *batch) {
    const tt_model_config *c = &m->config;
    const tti_layer *l = &m->layers[layer];
    tt_context *ctx = m->ctx;
    tt_attention_desc attention = TT_INIT;
    tt_tensor *q, *k, *v;
    attention.n_heads = c->num_attention_heads;
    attention.n_kv_heads = c->num_key_value_heads;
    attention.head_dim = c->head_dim;
    attention.layer = layer;
    if (c->gpt2) {
        tt_tensor *qkv = tti_matrix_apply(m, x, &l->matrix[TTI_QKV]);
        q = tt_columns(ctx, qkv, 0, c->hidden_size);
        k = tt_columns(ctx, qkv, c->hidden_size, c->hidden_size);
        v = tt_columns(ctx, qkv, 2 * c->hidden_size, c->hidden_size);
    } else {
        q = tti_head_norm(m, tti_matrix_apply(m, x, &l->matrix[TTI_Q]), l->q_norm);
        k = tti_head_norm(m, tti_matrix_apply(m, x, &l->matrix[TTI_K]), l->k_norm);
        v = tti_matrix_apply(m, x, &l->matrix[TTI_V]);
    }
    if (l->use_rope) {
        q = tt_rope(ctx, q, m->cos_table, m->sin_table, batch, c->head_dim);
        k = tt_rope(ctx, k, m->cos_table, m->sin_table, batch, c->head_dim);
    }
    return tti_matrix_apply(m, tt_attention(ctx, q, k, v, batch, &attention), &l->matrix[TTI_O]);
}

/* x [N,C] over [N, intermediate_size] to [N,C]. GELU is part of the product, but where an adapter adds to it
 * first. */
static tt_tensor *tti_mlp_block(const tt_model *m, int layer, tt_tensor *x) {
    const tti_matrix *matrix = m->layers[layer].matrix, *up = &matrix[TTI_UP];
    tt_context *ctx = m->ctx;
    tt_tensor *h;
    if (!m->config.gpt2) {
        h = tti_matrix_apply(m, x, up);
        h = tt_swiglu(ctx, tti_matrix_apply(m, x, &matrix[TTI_GATE]), h);
    } else if (tti_adapts(m, up)) {
        h = tt_gelu(ctx, tti_matrix_apply(m, x, up), 1);
    } else {
        h = tti_product_of(ctx, x, up->w, up->bias, 0, TT_GELU_TANH);
    }
    return tti_matrix_apply(m, h, &matrix[TTI_DOWN]);
}

typedef struct tti_layer_call {
    tt_model *model;
    const tt_batch *batch;
    int layer;
} tti_layer_call;

/* One layer, in the form that tt_recompute can run twice. */
static tt_tensor *tti_layer_forward(tt_context *ctx, void *user, tt_tensor *const *inputs, int n_inputs) {
    const tti_layer_call *call = (const tti_layer_call *)user;
    const tt_model *m = call->model;
    const tti_layer *l = &m->layers[call->layer];
    tt_tensor *x = inputs[0], *h;
    (void)n_inputs;
    h = tti_norm_apply(m, x, l->norm1, l->norm1_bias);
    x = tt_add(ctx, x, tti_attention_block(m, call->layer, h, call->batch));
    h = tti_norm_apply(m, x, l->norm2, l->norm2_bias);
    return tt_add(ctx, x, tti_mlp_block(m, call->layer, h));
}

/* Without gradients: the result takes the place of x, and all else that the layer left is given back, so that
 * a pass over any number of layers has the memory of one and stays in the caches. */
static tt_tensor *tti_layer_replace(tt_context *ctx, tti_layer_call *call, tt_tensor *x) {
    tti_mark host = tti_arena_mark(&ctx->host), device = tti_arena_mark(&ctx->device);
    tt_tensor *y = tti_layer_forward(ctx, call, &x, 1);
    tt_status status = y ? ctx->backend->copy(ctx, x->data, y->data, y->size * sizeof(float)) : TT_OK;
    if (!y || !tti_graph_ok(ctx, status)) { return NULL; }
    tti_arena_release(&ctx->host, host);
    tti_arena_release(&ctx->device, device);
    return x;
}

/* The call lives as long as the step: tt_recompute runs it again in backward, but not where it writes to a
 * cache. */
static tt_tensor *tti_layer_run(tt_model *m, const tt_batch *batch, int layer, tt_tensor *x) {
    tt_context *ctx = m->ctx;
    tti_layer_call *call = (tti_layer_call *)tti_step_alloc(ctx, sizeof *call);
    if (!call) { return tti_graph_broken(ctx); }
    call->model = m;
    call->batch = batch;
    call->layer = layer;
    if (ctx->no_grad) { return tti_layer_replace(ctx, call, x); }
    if (m->config.recompute && !batch->cache) { return tt_recompute(ctx, tti_layer_forward, call, &x, 1); }
    return tti_layer_forward(ctx, call, &x, 1);
}

/* Whether the model knows the batch's positions; makes room for them in the rotary tables. */
static int tti_positions_ok(tt_model *m, const tt_batch *batch) {
    int n, last = 0, most = m->config.max_position_embeddings - 1;
    for (n = 0; n < batch->n_tokens; n++) {
        if (batch->positions[n] > last) { last = batch->positions[n]; }
    }
    if (last <= most) { return tti_graph_ok(m->ctx, tti_rope_reserve(m, last + 1)); }
    tti_graph_fail(m->ctx, "tt_model_forward", "position (max_position_embeddings too small)", last, most);
    return 0;
}

/* The residual stream after the last layer, before the last norm. */
static tt_tensor *tti_model_body(tt_model *m, const tt_batch *batch) {
    tt_context *ctx = m->ctx;
    tt_tensor *x;
    int n;
    if (!batch) {
        tti_inputs_ok(ctx, "tt_model_forward: batch", (tt_tensor *const *)&batch, 1);
        return NULL;
    }
    if (!tti_positions_ok(m, batch)) { return NULL; }
    x = tt_embedding(ctx, m->embedding, batch->tokens, batch->n_tokens);
    if (m->positions) {
        x = tt_add(ctx, x, tt_embedding(ctx, m->positions, batch->positions, batch->n_tokens));
    }
    /* A frozen embedding needs no gradient, but tt_recompute passes one on only through its inputs. */
    if (x && m->config.recompute && !ctx->no_grad && tti_any_grad(m->params, m->n_params)) {
        x->requires_grad = 1;
    }
    for (n = 0; n < m->config.num_hidden_layers && x; n++) { x = tti_layer_run(m, batch, n, x); }
    if (x && batch->cache && !tti_graph_ok(ctx, tti_cache_advance(batch))) { return NULL; }
    return x;
}

TT_API tt_tensor *tt_model_forward(tt_model *m, const tt_batch *batch) {
    return tti_norm_apply(m, tti_model_body(m, batch), m->norm, m->norm_bias);
}

TT_API tt_tensor *tt_model_logits(tt_model *m, tt_tensor *hidden) {
    return tt_linear(m->ctx, hidden, m->head, NULL);
}

/* Norm and head only for the rows that predict a target. */
TT_API tt_tensor *tt_model_logprobs(tt_model *m, const tt_batch *batch, float temperature,
                                    tt_tensor **entropy_out) {
    tt_tensor *x = tti_model_body(m, batch), *in[2];
    if (entropy_out) { *entropy_out = NULL; }
    if (!x) { return NULL; }
    if (batch->n_targets < 1) {
        return tti_graph_fail(m->ctx, "tt_model_logprobs", "n_targets of the batch", batch->n_targets, 1);
    }
    x = tt_gather_rows(m->ctx, x, batch->target_rows, batch->n_targets);
    in[0] = tti_norm_apply(m, x, m->norm, m->norm_bias);
    in[1] = m->head;
    return tti_token_logprobs(m->ctx, in, batch->targets, &batch->kept, temperature, entropy_out);
}

/* ---- [tt:model.adapters] low-rank adapters ----
 * y = x W^T + scale (x A^T) B^T; merged: W += scale B A. W is frozen, A and B are trained.
 * Source: LoRA, Hu et al., arXiv 2106.09685, eq. 3; rsLoRA's scale, arXiv 2312.03732. */

/* Rank 8, and alpha twice the rank, unless told. */
static tt_status tti_lora_resolve(tt_context *ctx, tt_lora_desc *d) {
    static const char *const who = "tt_lora_desc";
    tt_status status = TT_OK;
    int i;
    if (d->rank == 0) { d->rank = 8; }
    if (d->alpha == 0) { d->alpha = 2.0f * (float)d->rank; }
    TTI_EXPECT(d->rank >= 1 && d->rank <= 65536, "rank is %d, expected 1..65536", d->rank);
    TTI_EXPECT(d->alpha > 0 && isfinite(d->alpha), "alpha is %g, expected > 0", (double)d->alpha);
    TTI_EXPECT(d->n_target_modules >= 0 && (d->n_target_modules == 0 || d->target_modules),
               "n_target_modules is %d, expected the number of target_modules", d->n_target_modules);
    for (i = 0; i < d->n_target_modules; i++) {
        TTI_EXPECT(d->target_modules[i] && d->target_modules[i][0], "target_modules[%d] is empty", i);
    }
done:
    return status;
}

/* The module of a matrix is its weight's name without ".weight"; a target is the module or its last parts. */
static int tti_lora_is_target(const tti_matrix *a, const char *target) {
    size_t module, n = strlen(target);
    const char *weight;
    if (!a->w) { return 0; }
    weight = a->w->name;
    module = strlen(weight) - strlen(".weight");
    return n <= module && strncmp(weight + module - n, target, n) == 0 &&
           (n == module || weight[module - n - 1] == '.');
}

static int tti_lora_wants(const tt_lora_desc *d, const tti_matrix *a) {
    int i;
    for (i = 0; i < d->n_target_modules; i++) {
        if (tti_lora_is_target(a, d->target_modules[i])) { return 1; }
    }
    return a->w && d->n_target_modules == 0;
}

/* Each target must name a matrix. */
static tt_status tti_lora_check(const tt_model *m, const tt_lora_desc *d) {
    static const char *const who = "tt_lora_desc";
    tt_context *ctx = m->ctx;
    tt_status status = TT_OK;
    int n = tti_model_n_matrices(m), t, i;
    for (t = 0; t < d->n_target_modules; t++) {
        for (i = 0; i < n && !tti_lora_is_target(tti_model_matrix(m, i), d->target_modules[t]); i++) { }
        TTI_EXPECT(i < n, "target_modules[%d] is \"%s\", expected a matrix of the layers such as %s", t,
                   d->target_modules[t], m->config.gpt2 ? "c_attn" : "q_proj");
    }
done:
    return status;
}

/* Both halves of one adapter. seed NULL: without data, for a file to fill. */
static tt_status tti_lora_attach(tt_model *m, const uint64_t *seed, int rank, tti_matrix *matrix) {
    int gpt2 = m->config.gpt2;
    tti_param_spec a = {NULL, rank, matrix->w->shape[gpt2 ? 0 : 1], TTI_UNIFORM, 0};
    tti_param_spec b = {NULL, matrix->w->shape[gpt2 ? 1 : 0], rank, TTI_ZEROS, 0};
    const char *weight = matrix->w->name;
    tt_text name = TT_INIT;
    tt_status status;
    name.ctx = m->ctx;
    status = tt_text_format(&name, "%.*s.lora_A.weight", (int)(strlen(weight) - strlen(".weight")), weight);
    if (status != TT_OK) { return status; }
    a.name = b.name = name.data;
    matrix->lora_a = tti_param_new(m, seed, &a);
    name.data[name.size - strlen("A.weight")] = 'B';
    matrix->lora_b = matrix->lora_a ? tti_param_new(m, seed, &b) : NULL;
    tt_text_free(&name);
    return matrix->lora_b ? TT_OK : tt_error_status(m->ctx);
}

/* The model's own copy of what its adapters are, and the end of that. */
static tt_status tti_lora_remember(tt_model *m, const tt_lora_desc *d) {
    int i;
    m->lora = *d;
    m->lora_targets = (char **)tt_alloc(m->ctx, (size_t)d->n_target_modules, sizeof *m->lora_targets);
    if (!m->lora_targets) { return TT_ERR_MEM; }
    m->lora.target_modules = (const char *const *)m->lora_targets;
    for (i = 0; i < d->n_target_modules; i++) {
        m->lora_targets[i] = tti_strdup(m->ctx, d->target_modules[i]);
        if (!m->lora_targets[i]) { return TT_ERR_MEM; }
    }
    m->lora_scale = (float)((double)d->alpha / (d->use_rslora ? sqrt((double)d->rank) : (double)d->rank));
    m->lora_off = 0;
    return TT_OK;
}

static void tti_lora_forget(tt_model *m) {
    int i;
    for (i = 0; m->lora_targets && i < m->lora.n_target_modules; i++) {
        tti_strfree(m->ctx, m->lora_targets[i]);
    }
    tt_free(m->ctx, m->lora_targets, (size_t)m->lora.n_target_modules, sizeof *m->lora_targets);
    m->lora_targets = NULL;
    memset(&m->lora, 0, sizeof m->lora);
}

/* Adapters are the last parameters of the list. */
static void tti_lora_detach(tt_model *m) {
    int i;
    for (i = 0; i < tti_model_n_matrices(m); i++) {
        tti_matrix *matrix = tti_model_matrix(m, i);
        matrix->lora_a = matrix->lora_b = NULL;
    }
    while (m->n_params > m->n_base) { tt_tensor_destroy(m->params[--m->n_params]); }
    tti_lora_forget(m);
}

/* Adds adapters, `empty`: without data; the base is still to be frozen. On failure nothing has changed. */
static tt_status tti_lora_build(tt_model *m, const tt_lora_desc *desc, int empty) {
    static const char *const who = "tt_model_lora_add";
    tt_context *ctx = m->ctx;
    tt_lora_desc d = *desc;
    const uint64_t *seed = empty ? NULL : &d.seed;
    int had = m->lora.rank, i;
    tt_status status;
    TTI_TRY(tti_lora_resolve(ctx, &d));
    TTI_EXPECT(had == 0, "the model has adapters, of rank %d", had);
    TTI_TRY(tti_lora_check(m, &d));
    TTI_TRY(tti_lora_remember(m, &d));
    for (i = 0; i < tti_model_n_matrices(m); i++) {
        tti_matrix *matrix = tti_model_matrix(m, i);
        if (tti_lora_wants(&d, matrix)) { TTI_TRY(tti_lora_attach(m, seed, d.rank, matrix)); }
    }
done:
    if (status != TT_OK && had == 0) { tti_lora_detach(m); }
    return status;
}

/* The base gets no gradients any more, and gives back the memory of those that it has. */
static void tti_lora_freeze(tt_model *m) {
    int i;
    for (i = 0; i < m->n_base; i++) {
        m->params[i]->requires_grad = 0;
        tti_grad_free(m->params[i]);
    }
}

/* A rank above the smaller side of every matrix adds nothing. peft takes such, and so tt_model_lora_load. */
static int tti_lora_most(const tt_model *m, const tt_lora_desc *d) {
    int most = 0, i;
    for (i = 0; i < tti_model_n_matrices(m); i++) {
        const tti_matrix *matrix = tti_model_matrix(m, i);
        int least;
        if (!tti_lora_wants(d, matrix)) { continue; }
        least = matrix->w->shape[matrix->w->shape[0] < matrix->w->shape[1] ? 0 : 1];
        if (least > most) { most = least; }
    }
    return most;
}

TT_API tt_status tt_model_lora_add(tt_model *m, const tt_lora_desc *desc) {
    static const tt_lora_desc zero = TT_INIT;
    static const char *const who = "tt_model_lora_add";
    tt_context *ctx = m->ctx;
    tt_lora_desc d = desc ? *desc : zero;
    tt_status status;
    int most;
    TTI_TRY(tti_lora_resolve(ctx, &d));
    most = tti_lora_most(m, &d);
    TTI_EXPECT(most == 0 || d.rank <= most, "rank is %d, expected at most %d, the width of the matrices",
               d.rank, most);
    TTI_TRY(tti_lora_build(m, &d, 0));
    tti_lora_freeze(m);
done:
    return status;
}

TT_API const tt_lora_desc *tt_model_lora_get(const tt_model *m) { return m->lora.rank ? &m->lora : NULL; }

TT_API int tt_model_lora_enable(tt_model *m, int on) {
    int was = m->lora.rank && !m->lora_off;
    m->lora_off = !on;
    return was;
}

/* W += scale B A, or its transpose where W is [in, out]. scaled: room for A. */
static tt_status tti_lora_fold(tt_model *m, const tti_matrix *matrix, float *scaled) {
    const tt_backend *backend = m->ctx->backend;
    const tt_tensor *a = matrix->lora_a, *b = matrix->lora_b;
    int rank = m->lora.rank, in = a->shape[1], out = b->shape[0];
    tt_status status = backend->unary(m->ctx, TT_SCALE, scaled, TT_F(a), a->size, m->lora_scale, 0);
    float *w = TT_F(matrix->w);
    tt_gemm_args g;
    if (m->config.gpt2) {
        g = tti_gemm_args_of(in, out, rank, tti_view_of(scaled, in, 1), tti_view_of(TT_F(b), rank, 1), w);
    } else {
        g = tti_gemm_args_of(out, in, rank, tti_view_of(TT_F(b), rank, 0), tti_view_of(scaled, in, 0), w);
    }
    g.accumulate = 1;
    matrix->w->panels_at = 0;
    return status == TT_OK ? backend->gemm(m->ctx, &g) : status;
}

TT_API tt_status tt_model_lora_merge(tt_model *m) {
    tt_context *ctx = m->ctx;
    size_t largest = 1;
    tt_status status = TT_OK;
    float *scaled;
    int i;
    if (!m->lora.rank) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_merge: the model has no adapters"); }
    if (m->lent_to) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_merge: the weights lie in a mapped file, expected a "
                       "model of tt_model_load");
    }
    for (i = m->n_base; i < m->n_params; i++) {
        if (m->params[i]->size > largest) { largest = m->params[i]->size; }
    }
    scaled = (float *)ctx->backend->alloc(ctx, largest * sizeof *scaled);
    if (!scaled) { return TT_ERR_MEM; }
    for (i = 0; i < tti_model_n_matrices(m); i++) {
        const tti_matrix *matrix = tti_model_matrix(m, i);
        if (matrix->lora_a) { TTI_TRY(tti_lora_fold(m, matrix, scaled)); }
    }
    tti_lora_detach(m);
    for (i = 0; i < m->n_base; i++) { m->params[i]->requires_grad = 1; }
done:
    ctx->backend->free(ctx, scaled, largest * sizeof *scaled);
    return status;
}

/* ---- [tt:model.create] creation, copies, and what is in a model ---- */

/* seed NULL: parameters have no data yet, for a caller that fills them all. */
static tt_model *tti_model_new(tt_context *ctx, const tt_model_config *config, const uint64_t *seed) {
    tt_model *m;
    tt_model_config c = *config;
    if (ctx->broken != TT_OK || tti_config_resolve(ctx, &c) != TT_OK) { return NULL; }
    m = (tt_model *)tt_alloc(ctx, 1, sizeof *m);
    if (!m) { return NULL; }
    m->ctx = ctx;
    m->config = c;
    m->max_params = c.num_hidden_layers * TTI_LAYER_PARAMS + 5;
    m->params = (tt_tensor **)tt_alloc(ctx, (size_t)m->max_params, sizeof *m->params);
    m->layers = (tti_layer *)tt_alloc(ctx, (size_t)c.num_hidden_layers, sizeof *m->layers);
    if (!m->params || !m->layers || !tti_model_params(m, seed)) {
        tt_model_destroy(m);
        return NULL;
    }
    m->n_base = m->n_params;
    tti_generation_of_config(&m->config, &m->generation);
    return m;
}

TT_API tt_model *tt_model_create(tt_context *ctx, const tt_model_config *config, uint64_t seed) {
    return (tt_model *)tti_made(ctx, "tt_model_create", tti_model_new(ctx, config, &seed));
}

/* Parameters may lie in lent memory, so the loan ends after them. */
TT_API void tt_model_destroy(tt_model *m) {
    int i;
    if (!m) { return; }
    for (i = 0; i < m->n_params; i++) { tt_tensor_destroy(m->params[i]); }
    if (m->release) { m->release(m->lent_to); }
    tti_lora_forget(m);
    tti_strfree(m->ctx, m->generation.text);
    tti_strfree(m->ctx, m->chat_template);
    tt_tensor_destroy(m->cos_table);
    tt_tensor_destroy(m->sin_table);
    tt_free(m->ctx, m->params, (size_t)m->max_params, sizeof *m->params);
    tt_free(m->ctx, m->layers, (size_t)m->config.num_hidden_layers, sizeof *m->layers);
    tt_free(m->ctx, m, 1, sizeof *m);
}

TT_API tt_status tt_model_assign(tt_model *to, const tt_model *from) {
    static const char *const who = "tt_model_assign";
    tt_context *ctx = to->ctx;
    tt_status status = TT_OK;
    int i;
    if (to->n_params != from->n_params) {
        return tt_fail(ctx, TT_ERR_SHAPE, "%s: %d parameters, expected %d", who, from->n_params,
                       to->n_params);
    }
    for (i = 0; i < to->n_params; i++) {
        tt_tensor *a = to->params[i], *b = from->params[i];
        TTI_EXPECT(!a->lent, "parameter %s lies in a mapped file", a->name);
        if (strcmp(a->name, b->name) == 0 && a->size == b->size && a->shape[0] == b->shape[0]) { continue; }
        return tt_fail(ctx, TT_ERR_SHAPE, "%s: parameter %d is %s [%d,%d], expected %s [%d,%d]", who, i,
                       b->name, b->shape[0], b->shape[1], a->name, a->shape[0], a->shape[1]);
    }
    for (i = 0; i < to->n_params; i++) {
        tt_tensor *a = to->params[i], *b = from->params[i];
        a->panels_at = 0;
        if (a->dtype == b->dtype) { TTI_TRY(ctx->backend->copy(ctx, a->data, b->data, tti_tensor_bytes(a))); }
        else { TTI_TRY(ctx->backend->cast(ctx, a->data, a->dtype, b->data, b->dtype, a->size)); }
    }
done:
    return status;
}

/* NULL stays NULL. */
static tt_status tti_copy_string(tt_context *ctx, const char *from, char **to) {
    *to = from ? tti_strdup(ctx, from) : NULL;
    return from && !*to ? TT_ERR_MEM : TT_OK;
}

/* All that a copy has lies in memory of its own, also where the original's weights are lent. */
TT_API tt_model *tt_model_copy(const tt_model *from) {
    tt_context *ctx = from->ctx;
    tt_model *m = tti_model_new(ctx, &from->config, NULL);
    tt_status status = TT_OK;
    int i;
    if (!m) { return NULL; }
    if (from->lora.rank) { TTI_TRY(tti_lora_build(m, &from->lora, 1)); }
    m->lora_off = from->lora_off;
    m->generation = from->generation;
    TTI_TRY(tti_copy_string(ctx, from->generation.text, &m->generation.text));
    TTI_TRY(tti_copy_string(ctx, from->chat_template, &m->chat_template));
    for (i = 0; i < m->n_params; i++) {
        m->params[i]->requires_grad = 0;
        TTI_TRY(tti_param_alloc(m->params[i]));
    }
    TTI_TRY(tt_model_assign(m, from));
done:
    if (status == TT_OK) { return m; }
    tt_model_destroy(m);
    return NULL;
}

TT_API const tt_model_config *tt_model_config_get(const tt_model *m) { return &m->config; }
TT_API tt_context *tt_model_context(const tt_model *m) { return m->ctx; }
TT_API int tt_model_n_params(const tt_model *m) { return m->n_params; }

TT_API tt_tensor *tt_model_param(const tt_model *m, int index) {
    return index >= 0 && index < m->n_params ? m->params[index] : NULL;
}

TT_API tt_tensor *tt_model_param_find(const tt_model *m, const char *name) {
    int i;
    for (i = 0; i < m->n_params; i++) {
        if (strcmp(m->params[i]->name, name) == 0) { return m->params[i]; }
    }
    return NULL;
}

TT_API size_t tt_model_size(const tt_model *m) {
    size_t size = 0;
    int i;
    for (i = 0; i < m->n_params; i++) { size += m->params[i]->size; }
    return size;
}

TT_API void tt_model_zero_grad(tt_model *m) {
    int i;
    for (i = 0; i < m->n_params; i++) { tti_graph_ok(m->ctx, tt_zero_grad(m->params[i])); }
}

/* ==== 8. files =============================================================================
 * Models, adapters and training states on disk. Tensors lie in safetensors files; all else is JSON whose
 * known members are rows of a table, from which it is both read and written. What is read may come from
 * anyone: every name, type, shape and number is checked before memory is asked for or an object is changed,
 * and every error names the file. What is written is looked at first, and each file takes the place of the
 * old one as a whole. Uses text, JSON and files of chapter 1, tensors, tokenizer and model. */

/* ---- [tt:files.safetensors] reading safetensors ----
 *     bytes 0 ..           N, the length of the header: 8 bytes, little endian
 *     bytes 8 ..           the header, JSON: {"__metadata__": {"key": "text", ...},
 *                          "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
 *     bytes 8 + N ..       the data: all tensors, row by row, little endian; data_offsets count from here
 * Each byte of the data belongs to exactly one tensor. */

/* The types of a file. The first three are TT_F32, TT_BF16 and TT_F16, by their numbers; others stay
 * unread. */
typedef struct tti_file_type {
    const char *name;
    size_t bytes;
} tti_file_type;

static const tti_file_type tti_file_types[] = {
    {"F32", 4}, {"BF16", 2}, {"F16", 2}, {"F64", 8}, {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1},
    {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

typedef struct tti_entry {
    tt_safetensors_info info;       /* name: in the header; dtype: TT_I32 for all unread types */
    const char *type;               /* "F32", "BF16", ...                                     */
    size_t begin, end;              /* of its bytes, from the begin of the file               */
} tti_entry;

struct tt_safetensors {
    tt_context *ctx;
    char *path;
    const unsigned char *bytes;     /* the whole file, mapped or in text */
    size_t size;
    int mapped;
    tt_text text;
    tt_json *header;
    tti_entry *entries;             /* [n], in the order of the header   */
    size_t n;
    struct tt_safetensors *next;    /* another file of the same model    */
};

/* The refusal of what stands in a file: "FILE: ..." */
static tt_status tti_refuse(tt_context *ctx, const char *file, const char *format, ...) {
    char reason[TTI_ERROR_SIZE];
    va_list list;
    va_start(list, format);
    tti_vformat(reason, sizeof reason, format, list);
    va_end(list);
    return tt_fail(ctx, TT_ERR_FILE, "%s: %s", file, reason);
}

/* The error that the content of a file has led to, now with the file before it; but not that memory is
 * out. */
static tt_status tti_file_fail(tt_context *ctx, const char *path, const char *part) {
    tt_status status = tt_error_status(ctx);
    if (status != TT_ERR_FILE && status != TT_ERR_ARG) { return status; }
    return tti_refuse(ctx, path, "%s%.300s", part, tt_error(ctx));
}

/* A size as JSON: a whole number that fits size_t. */
static int tti_json_size(const tt_json *node, size_t *out) {
    uint64_t value;
    if (!tti_json_whole(node, SIZE_MAX, &value)) { return 0; }
    *out = (size_t)value;
    return 1;
}

/* The product of no dimensions is 1, a scalar; one dimension of 0 makes an empty tensor. Both are allowed. */
static tt_status tti_entry_shape(const tt_safetensors *st, const tt_json *shape, tt_safetensors_info *info) {
    const tt_json *dim;
    if (!shape || shape->type != TT_JSON_ARRAY || shape->length > 8) {
        return tti_refuse(st->ctx, st->path, "tensor %s has no shape of at most 8 numbers", info->name);
    }
    info->size = 1;
    for (dim = shape->child; dim; dim = dim->next, info->ndim++) {
        size_t *n = &info->shape[info->ndim];
        if (tti_json_size(dim, n) && tti_mul_size(info->size, *n, &info->size)) { continue; }
        return tti_refuse(st->ctx, st->path, "tensor %s: shape[%d] is %g, expected a size", info->name,
                          info->ndim, dim->number);
    }
    return TT_OK;
}

/* One member of the header; the data are the bytes from `first` on. */
static tt_status tti_entry_parse(const tt_safetensors *st, const tt_json *node, size_t first, tti_entry *e) {
    const tt_json *offsets = tt_json_get(node, "data_offsets");
    size_t n_types = sizeof tti_file_types / sizeof *tti_file_types, data = st->size - first, bytes = 0, k;
    const char *name = e->info.name = node->key;
    e->type = tt_json_text(node, "dtype", "");
    if (strlen(name) != node->key_length) {
        return tti_refuse(st->ctx, st->path, "the name of tensor %s holds a zero byte", name);
    }
    for (k = 0; k < n_types && strcmp(e->type, tti_file_types[k].name) != 0; k++) { }
    if (k == n_types) {
        return tti_refuse(st->ctx, st->path, "tensor %s has dtype \"%s\", expected F32, F16, BF16, ...", name,
                          e->type);
    }
    e->info.dtype = k < TT_I32 ? (tt_dtype)k : TT_I32;
    if (tti_entry_shape(st, tt_json_get(node, "shape"), &e->info) != TT_OK) { return TT_ERR_FILE; }
    if (!offsets || offsets->length != 2 || !tti_json_size(offsets->child, &e->begin) ||
        !tti_json_size(offsets->child->next, &e->end) || e->begin > e->end || e->end > data) {
        return tti_refuse(st->ctx, st->path, "tensor %s: data_offsets are not two places in 0..%zu", name,
                          data);
    }
    if (!tti_mul_size(e->info.size, tti_file_types[k].bytes, &bytes) || bytes != e->end - e->begin) {
        return tti_refuse(st->ctx, st->path, "tensor %s holds %zu bytes, its shape wants %zu", name,
                          e->end - e->begin, bytes);
    }
    e->begin += first;
    e->end += first;
    return TT_OK;
}

static int tti_name_order(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* *twice: a name that two of n structs have, or NULL. Each struct has `size` bytes and begins with its
 * name. */
static tt_status tti_name_twice(tt_context *ctx, const void *all, size_t size, size_t n, const char **twice) {
    const char **sorted = (const char **)tt_alloc(ctx, n, sizeof *sorted);
    size_t i;
    *twice = NULL;
    if (!sorted) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { memcpy(&sorted[i], (const char *)all + i * size, sizeof *sorted); }
    if (n > 1) { qsort(sorted, n, sizeof *sorted, tti_name_order); }
    for (i = 1; i < n && !*twice; i++) {
        if (strcmp(sorted[i], sorted[i - 1]) == 0) { *twice = sorted[i]; }
    }
    tt_free(ctx, sorted, n, sizeof *sorted);
    return TT_OK;
}

static int tti_entry_order(const void *a, const void *b) {
    const tti_entry *x = *(const tti_entry *const *)a, *y = *(const tti_entry *const *)b;
    if (x->begin != y->begin) { return x->begin < y->begin ? -1 : 1; }
    return x->end < y->end ? -1 : x->end > y->end;
}

/* No name twice, no byte twice, no byte unused: in their order, each tensor begins where the one before
 * ends. */
static tt_status tti_entries_check(const tt_safetensors *st, size_t first) {
    const tti_entry **order = (const tti_entry **)tt_alloc(st->ctx, st->n, sizeof *order);
    const char *twice;
    size_t i, at = first;
    tt_status status;
    TTI_TRY(order ? tti_name_twice(st->ctx, st->entries, sizeof *st->entries, st->n, &twice) : TT_ERR_MEM);
    TTI_TRY(twice ? tti_refuse(st->ctx, st->path, "tensor %s stands there twice", twice) : TT_OK);
    for (i = 0; i < st->n; i++) { order[i] = &st->entries[i]; }
    if (st->n > 1) { qsort(order, st->n, sizeof *order, tti_entry_order); }
    for (i = 0; i < st->n && order[i]->begin == at; i++) { at = order[i]->end; }
    if (i < st->n) {
        status = tti_refuse(st->ctx, st->path, "tensor %s begins at byte %zu of the data, expected %zu",
                            order[i]->info.name, order[i]->begin - first, at - first);
    } else if (at != st->size) {
        status = tti_refuse(st->ctx, st->path, "tensors end at byte %zu of the data, the file at %zu",
                            at - first, st->size - first);
    }
done:
    tt_free(st->ctx, order, st->n, sizeof *order);
    return status;
}

/* The limit of the header is that of the format. What the checks below accept is safe to read: every tensor
 * lies inside the file, as long as nobody shortens the file. */
static tt_status tti_safetensors_parse(tt_safetensors *st) {
    tt_context *ctx = st->ctx;
    const tt_json *node, *metadata;
    uint64_t length = 0;
    size_t first, i;
    if (st->size < 8) { return tti_refuse(ctx, st->path, "%zu bytes are no safetensors file", st->size); }
    for (i = 8; i-- > 0;) { length = length << 8 | st->bytes[i]; }
    if (length > st->size - 8 || length > 100000000) {
        return tti_refuse(ctx, st->path, "header length is %.0f, expected at most %zu (bytes left in the "
                          "file)", (double)length, st->size - 8);
    }
    first = 8 + (size_t)length;
    st->header = tt_json_parse(ctx, (const char *)st->bytes + 8, (size_t)length);
    if (!st->header) { return tti_file_fail(ctx, st->path, "header: "); }
    if (st->header->type != TT_JSON_OBJECT) { return tti_refuse(ctx, st->path, "header is no JSON object"); }
    metadata = tt_json_get(st->header, "__metadata__");
    if (metadata && metadata->type != TT_JSON_OBJECT) {
        return tti_refuse(ctx, st->path, "__metadata__ in the header is no object");
    }
    st->entries = (tti_entry *)tt_alloc(ctx, st->header->length + 1, sizeof *st->entries);
    if (!st->entries) { return TT_ERR_MEM; }
    for (node = st->header->child; node; node = node->next) {
        if (strcmp(node->key, "__metadata__") == 0) { continue; }
        if (tti_entry_parse(st, node, first, &st->entries[st->n]) != TT_OK) { return tt_error_status(ctx); }
        st->n++;
    }
    return tti_entries_check(st, first);
}

/* Maps the file where the system can, else reads it. */
static tt_status tti_safetensors_map(tt_safetensors *st) {
    tt_status status;
#ifdef TTI_POSIX
    uint64_t size;
    int fd = tti_file_descriptor(st->ctx, st->path, &size);
    void *memory = MAP_FAILED;
    if (fd < 0) { return tt_error_status(st->ctx); }
    if (size > 0 && size <= SIZE_MAX) { memory = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0); }
    close(fd);
    if (memory != MAP_FAILED) {
        st->bytes = (const unsigned char *)memory;
        st->size = (size_t)size;
        st->mapped = 1;
        return TT_OK;
    }
#endif
    status = tt_file_read(st->ctx, st->path, &st->text);
    st->bytes = (const unsigned char *)st->text.data;
    st->size = st->text.size;
    return status;
}

TT_API tt_safetensors *tt_safetensors_open(tt_context *ctx, const char *path) {
    tt_safetensors *st = (tt_safetensors *)tt_alloc(ctx, 1, sizeof *st);
    if (!st) { return NULL; }
    st->ctx = st->text.ctx = ctx;
    st->path = tti_strdup(ctx, path);
    if (!st->path || tti_safetensors_map(st) != TT_OK || tti_safetensors_parse(st) != TT_OK) {
        tt_safetensors_close(st);
        st = NULL;
    }
    return (tt_safetensors *)tti_made(ctx, "tt_safetensors_open", st);
}

TT_API void tt_safetensors_close(tt_safetensors *st) {
    if (!st) { return; }
    if (st->entries) { tt_free(st->ctx, st->entries, st->header->length + 1, sizeof *st->entries); }
    tt_json_free(st->ctx, st->header);
#ifdef TTI_POSIX
    if (st->mapped) { munmap((void *)(uintptr_t)st->bytes, st->size); }
#endif
    tt_text_free(&st->text);
    tti_strfree(st->ctx, st->path);
    tt_free(st->ctx, st, 1, sizeof *st);
}

TT_API int tt_safetensors_count(const tt_safetensors *st) { return (int)st->n; }

TT_API tt_safetensors_info tt_safetensors_info_get(const tt_safetensors *st, int index) {
    tt_safetensors_info none = TT_INIT;
    return index < 0 || (size_t)index >= st->n ? none : st->entries[index].info;
}

/* One after another: a model looks for each of its parameters once, and the names of a file are few. */
TT_API int tt_safetensors_find(const tt_safetensors *st, const char *name) {
    size_t i;
    for (i = 0; i < st->n; i++) {
        if (strcmp(st->entries[i].info.name, name) == 0) { return (int)i; }
    }
    return -1;
}

TT_API tt_status tt_safetensors_read(tt_safetensors *st, int index, float *out) {
    const tti_entry *e;
    const unsigned char *from;
    size_t i;
    if (index < 0 || (size_t)index >= st->n) {
        return tt_fail(st->ctx, TT_ERR_ARG, "tt_safetensors_read: index is %d, expected 0..%d", index,
                       (int)st->n - 1);
    }
    e = &st->entries[index];
    from = st->bytes + e->begin;
    if (e->info.dtype == TT_I32) {
        return tti_refuse(st->ctx, st->path, "tensor %s has dtype %s, expected F32, F16 or BF16",
                          e->info.name, e->type);
    }
    if (e->info.dtype == TT_F32) { memcpy(out, from, e->info.size * 4); }
    for (i = 0; e->info.dtype != TT_F32 && i < e->info.size; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, 2);
        out[i] = e->info.dtype == TT_BF16 ? tti_from_bf16(half) : tti_from_f16(half);
    }
    return TT_OK;
}

TT_API const char *tt_safetensors_metadata(const tt_safetensors *st, const char *key) {
    return tt_json_text(tt_json_get(st->header, "__metadata__"), key, NULL);
}

/* The tensor of the file has the shape of t, which is what `who` says in the error. */
static tt_status tti_entry_fits(const tt_safetensors *st, int index, const tt_tensor *t, const char *who) {
    const tti_entry *e = &st->entries[index];
    char found[192] = "", want[64] = "";
    int d, same = e->info.ndim == t->ndim;
    for (d = 0; d < e->info.ndim; d++) {
        size_t used = strlen(found);
        same = same && e->info.shape[d] == (size_t)t->shape[d];
        tti_format(found + used, sizeof found - used, "%s%zu", d ? "," : "", e->info.shape[d]);
    }
    if (same) { return TT_OK; }
    for (d = 0; d < t->ndim; d++) {
        size_t used = strlen(want);
        tti_format(want + used, sizeof want - used, "%s%d", d ? "," : "", t->shape[d]);
    }
    return tti_refuse(st->ctx, st->path, "tensor %s is [%s], %s [%s]", e->info.name, found, who, want);
}

/* t takes the values of a tensor of its shape, converted to its type; and its memory, if it has none yet. */
static tt_status tti_tensor_fill(tt_safetensors *st, int index, tt_tensor *t) {
    const tti_entry *e = &st->entries[index];
    float *values = NULL;
    tt_status status;
    TTI_TRY(tti_param_alloc(t));
    t->panels_at = 0;
    if (e->info.dtype == t->dtype) {
        return t->ctx->backend->upload(t->ctx, t->data, st->bytes + e->begin, tti_tensor_bytes(t));
    }
    values = (float *)tt_alloc(t->ctx, t->size, sizeof *values);
    TTI_TRY(values ? tt_safetensors_read(st, index, values) : TT_ERR_MEM);
    TTI_TRY(tt_tensor_set(t, values));
done:
    tt_free(t->ctx, values, t->size, sizeof *values);
    return status;
}

/* Each tensor of the list is in the file, with its shape, and nothing else is. */
static tt_status tti_list_check(const tt_safetensors *st, const tt_named *list, int n, const char *who) {
    size_t k;
    int i, at;
    for (i = 0; i < n; i++) {
        at = tt_safetensors_find(st, list[i].name);
        if (at < 0) { return tti_refuse(st->ctx, st->path, "tensor %s is missing", list[i].name); }
        if (tti_entry_fits(st, at, list[i].tensor, who) != TT_OK) { return TT_ERR_FILE; }
    }
    for (k = 0; k < st->n && st->n != (size_t)n; k++) {         /* all are there: find the one too many */
        const char *name = st->entries[k].info.name;
        for (i = 0; i < n && strcmp(name, list[i].name) != 0; i++) { }
        if (i < n) { continue; }
        return tti_refuse(st->ctx, st->path, "tensor %s is one too many, %s no such tensor", name, who);
    }
    return TT_OK;
}

/* Only to be called when tti_list_check has passed: what fails now is memory or the device. */
static tt_status tti_list_fill(tt_safetensors *st, const tt_named *list, int n) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tti_tensor_fill(st, tt_safetensors_find(st, list[i].name), list[i].tensor);
    }
    return status;
}

/* ---- [tt:files.write] writing safetensors ----
 * Two passes over the tensors: the scan, before any file is touched, and the writing. Spaces fill up the
 * header, so that the data begin at a multiple of 8 and can be used where they are mapped. */

/* What goes into a file: the tensors in this order, rounded to dtype. */
typedef struct tti_contents {
    const tt_named *tensors;
    int n;
    tt_dtype dtype;
    const char *state;              /* the text of a training state, or NULL        */
    uint64_t checksum;              /* by the scan: the sum over tensors, and state */
} tti_contents;

/* The most values that one of the tensors has, for one buffer. */
static size_t tti_contents_largest(const tti_contents *c) {
    size_t largest = 1;
    int i;
    for (i = 0; i < c->n; i++) {
        if (c->tensors[i].tensor->size > largest) { largest = c->tensors[i].tensor->size; }
    }
    return largest;
}

/* The bytes of tensor i in the file. */
static size_t tti_contents_bytes(const tti_contents *c, int i) {
    return c->tensors[i].tensor->size * tti_dtype_bytes(c->dtype);
}

/* The values of tensor i in the file's type, narrowed in place. *bad: the first whose exponent is all ones,
 * an infinity or no number; the tensor's size if there is none. */
static tt_status tti_contents_values(const tti_contents *c, int i, float *values, size_t *bad) {
    const tt_tensor *t = c->tensors[i].tensor;
    uint32_t mask = c->dtype == TT_F32 ? 0x7F800000u : c->dtype == TT_BF16 ? 0x7F80 : 0x7C00, word;
    tt_status status = tt_tensor_get(t, values);
    size_t k;
    *bad = t->size;
    for (k = t->size; status == TT_OK && c->dtype == TT_F32 && k-- > 0;) {
        memcpy(&word, &values[k], 4);
        if ((word & mask) == mask) { *bad = k; }
    }
    for (k = 0; status == TT_OK && c->dtype != TT_F32 && k < t->size; k++) {
        uint16_t half = c->dtype == TT_BF16 ? tti_to_bf16(values[k]) : tti_to_f16(values[k]);
        memcpy((unsigned char *)values + 2 * k, &half, 2);
        if ((half & mask) == mask && *bad == t->size) { *bad = k; }
    }
    return status;
}

/* A checksum is the sum of these over the name and bytes of each tensor, so that their order is free. A
 * change within one word of 8 bytes changes it for certain, for each step can be undone; any other but one in
 * 2^64. */
static uint64_t tti_checksum(const char *name, const void *bytes, size_t size) {
    const unsigned char *at = (const unsigned char *)bytes;
    uint64_t h = tt_hash(name, strlen(name), 0), word;
    size_t n;
    for (; size > 0; size -= n, at += n) {
        n = size < sizeof word ? size : sizeof word;
        word = 0;
        memcpy(&word, at, n);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 32;
    }
    return h;
}

/* All that will be written is finite, for nothing else may take a good file's place; and the checksum. */
static tt_status tti_contents_scan(tt_context *ctx, const char *path, tti_contents *c) {
    size_t largest = tti_contents_largest(c), bad;
    float *values = (float *)tt_alloc(ctx, largest, sizeof *values);
    tt_status status = values ? TT_OK : TT_ERR_MEM;
    int i;
    c->checksum = c->state ? tti_checksum("state", c->state, strlen(c->state)) : 0;
    for (i = 0; values && i < c->n; i++) {
        const char *name = c->tensors[i].name;
        TTI_TRY(tti_contents_values(c, i, values, &bad));
        c->checksum += tti_checksum(name, values, tti_contents_bytes(c, i));
        if (bad == c->tensors[i].tensor->size) { continue; }
        status = tt_fail(ctx, TT_ERR_NUMBER, "%s: not written, for value %zu of %s is not finite as %s", path,
                         bad, name, tti_file_types[c->dtype].name);
        goto done;
    }
done:
    tt_free(ctx, values, largest, sizeof *values);
    return status;
}

/* data_offsets are written in the order of the list, without gaps, as every reader wants them. */
static tt_status tti_contents_header(const tti_contents *c, tt_text *out) {
    size_t at = 0;
    tt_status status;
    int i, d;
    TTI_TRY(tt_text_format(out, "{\"__metadata__\":{\"format\":\"pt\""));
    if (c->state) {
        TTI_TRY(tt_text_format(out, ",\"checksum\":\"%016llx\",\"state\":", (unsigned long long)c->checksum));
        TTI_TRY(tt_text_json(out, c->state, strlen(c->state)));
    }
    TTI_TRY(tt_text_append(out, "}", 1));
    for (i = 0; i < c->n; i++) {
        const tt_tensor *t = c->tensors[i].tensor;
        size_t end = at + tti_contents_bytes(c, i);
        TTI_TRY(tt_text_append(out, ",", 1));
        TTI_TRY(tt_text_json(out, c->tensors[i].name, strlen(c->tensors[i].name)));
        TTI_TRY(tt_text_format(out, ":{\"dtype\":\"%s\",\"shape\":[", tti_file_types[c->dtype].name));
        for (d = 0; d < t->ndim; d++) { TTI_TRY(tt_text_format(out, "%s%d", d ? "," : "", t->shape[d])); }
        TTI_TRY(tt_text_format(out, "],\"data_offsets\":[%.0f,%.0f]}", (double)at, (double)end));
        at = end;
    }
    status = tt_text_append(out, "}       ", 8 - out->size % 8);
done:
    return status;
}

/* To a temporary file, whose name is changed when all of it is on disk (chapter 1). The values are fetched
 * one tensor at a time: the host needs room for the largest, also where the model lies on a device. */
static tt_status tti_safetensors_write(tt_context *ctx, const char *path, const tti_contents *c) {
    size_t largest = tti_contents_largest(c), bad;
    float *values = (float *)tt_alloc(ctx, largest, sizeof *values);
    unsigned char length[8];
    tt_text header = TT_INIT;
    tti_writer writer;
    tt_status status = values ? TT_OK : TT_ERR_MEM;
    int i;
    memset(&writer, 0, sizeof writer);
    writer.ctx = header.ctx = ctx;
    if (status != TT_OK) { goto done; }
    TTI_TRY(tti_contents_header(c, &header));
    for (i = 0; i < 8; i++) { length[i] = (unsigned char)((uint64_t)header.size >> (8 * i)); }
    TTI_TRY(tti_writer_open(&writer, ctx, path));
    TTI_TRY(tti_writer_write(&writer, length, 8));
    TTI_TRY(tti_writer_write(&writer, header.data, header.size));
    for (i = 0; i < c->n; i++) {
        TTI_TRY(tti_contents_values(c, i, values, &bad));
        TTI_TRY(tti_writer_write(&writer, values, tti_contents_bytes(c, i)));
    }
    TTI_TRY(tti_writer_close(&writer));
done:
    if (status != TT_OK) { tti_writer_abort(&writer); }
    tt_free(ctx, values, largest, sizeof *values);
    tt_text_free(&header);
    return status;
}

/* ---- [tt:files.state] training state ----
 * A safetensors file, all float32, with two members of __metadata__: "state", the caller's JSON, and
 * "checksum", 16 hexadecimal digits: the sum of tti_checksum over "state" with this text, and over each
 * tensor. */

/* The tensors of a state are float32 and have names of their own, else no reader would take the file. */
static tt_status tti_state_list(tt_context *ctx, const char *path, const tt_named *tensors, int n) {
    const char *twice;
    tt_status status;
    int i;
    for (i = 0; i < n; i++) { TTI_TRY(tti_want_f32(tensors[i].tensor, path)); }
    TTI_TRY(tti_name_twice(ctx, tensors, sizeof *tensors, (size_t)n, &twice));
    TTI_TRY(twice ? tt_fail(ctx, TT_ERR_ARG, "%s: tensor %s is listed twice", path, twice) : TT_OK);
done:
    return status;
}

/* The checksum belongs to the header, so the scan, which needs all values anyway, comes up with it. */
TT_API tt_status tt_state_save(tt_context *ctx, const char *path, const tt_named *tensors, int n,
                               const char *json) {
    tti_contents c = TT_INIT;
    tt_status status;
    c.tensors = tensors;
    c.n = n;
    c.dtype = TT_F32;
    c.state = json ? json : "";
    TTI_TRY(tti_state_list(ctx, path, tensors, n));
    TTI_TRY(tti_contents_scan(ctx, path, &c));
    TTI_TRY(tti_safetensors_write(ctx, path, &c));
done:
    return tti_tried(ctx, "tt_state_save", status);
}

/* The caller's JSON, appended to out unless that is NULL, of a file that is as it was written. Files of other
 * programs have no checksum. */
static tt_status tti_state_read(const tt_safetensors *st, tt_text *out) {
    const char *state = tt_safetensors_metadata(st, "state");
    const char *wanted = tt_safetensors_metadata(st, "checksum");
    char found[32];
    uint64_t sum;
    size_t i;
    if (!state) { return tti_refuse(st->ctx, st->path, "no training state (metadata \"state\")"); }
    sum = tti_checksum("state", state, strlen(state));
    for (i = 0; wanted && i < st->n; i++) {
        const tti_entry *e = &st->entries[i];
        sum += tti_checksum(e->info.name, st->bytes + e->begin, e->end - e->begin);
    }
    snprintf(found, sizeof found, "%016llx", (unsigned long long)sum);
    if (wanted && strcmp(wanted, found) != 0) {
        return tti_refuse(st->ctx, st->path, "damaged: its checksum is %s, expected %.32s as in its header",
                          found, wanted);
    }
    return out ? tt_text_append(out, state, strlen(state)) : TT_OK;
}

TT_API tt_status tt_state_json(tt_context *ctx, const char *path, tt_text *out) {
    tt_safetensors *st = tt_safetensors_open(ctx, path);
    tt_status status = st ? tti_state_read(st, out) : tt_error_status(ctx);
    tt_safetensors_close(st);
    return tti_tried(ctx, "tt_state_json", status);
}

/* All that can fail comes before the first tensor is changed. */
TT_API tt_status tt_state_load(tt_context *ctx, const char *path, const tt_named *tensors, int n,
                               tt_text *json_out) {
    tt_safetensors *st = tt_safetensors_open(ctx, path);
    size_t before = json_out ? json_out->size : 0;
    tt_status status = st ? TT_OK : tt_error_status(ctx);
    int i;
    if (!st) { goto done; }
    TTI_TRY(tti_state_list(ctx, path, tensors, n));
    TTI_TRY(tti_list_check(st, tensors, n, "the caller wants"));
    for (i = 0; i < (int)st->n; i++) {
        const tti_entry *e = &st->entries[i];
        if (e->info.dtype == TT_F32) { continue; }
        status = tti_refuse(ctx, path, "tensor %s has dtype %s, expected F32", e->info.name, e->type);
        goto done;
    }
    TTI_TRY(tti_state_read(st, json_out));
    TTI_TRY(tti_list_fill(st, tensors, n));
done:
    if (status != TT_OK && json_out) { json_out->size = before; }
    tt_safetensors_close(st);
    return tti_tried(ctx, "tt_state_load", status);
}

/* ---- [tt:files.fields] JSON files as tables of fields ----
 * config.json, generation_config.json and adapter_config.json are objects of which some members matter. Each
 * of these is a row of a table: its name, what its value may be, the families of models whose files have it,
 * and the place of its value in a struct. Reading and writing walk through the rows. Other members are not
 * looked at; one that is missing, or null, leaves the struct as it is. */

typedef enum tti_field_kind {
    /* float: > 0; >= 0; in 0..1 */
    TTI_POSITIVE, TTI_NOT_NEGATIVE, TTI_FRACTION,
    /* int: a whole number; 0 is written as null, or left out */
    TTI_COUNT, TTI_COUNT_IF,
    /* int: true or false */
    TTI_SWITCH,
    /* tti_tokens: a token id, a list of them, or null */
    TTI_TOKENS,
    /* tti_any: for the caller to look at, and written as the caller says */
    TTI_ANY,
    /* no place: `fixed`, one value or "x" or "y", is all that is allowed; the first is written */
    TTI_FIXED,
    /* no place: null, false or empty is all that is allowed; never written */
    TTI_EMPTY
} tti_field_kind;

typedef struct tti_field {
    const char *key;                /* NULL: the end of the table                                    */
    tti_field_kind kind;
    unsigned set;                   /* of families TTI_IN_..., and TTI_ONLY_READ or TTI_ONLY_WRITTEN */
    size_t offset;                  /* of the place in the struct                                    */
    const char *fixed;
} tti_field;

enum {
    TTI_IN_LLAMA = 1, TTI_IN_MISTRAL = 2, TTI_IN_QWEN2 = 4, TTI_IN_QWEN3 = 8, TTI_IN_SMOLLM3 = 16,
    TTI_IN_LLAMAS = 31,             /* all of these: the same body */
    TTI_IN_GPT2 = 32, TTI_IN_ALL = 63,
    TTI_IN_GENERATION = 64,         /* the members of config.json that generation_config.json repeats */
    TTI_ONLY_READ = 128, TTI_ONLY_WRITTEN = 256,
    TTI_NULL_IS_0 = 512             /* null is read as 0, and not as if the member were missing       */
};

typedef struct tti_limits {
    double low, high;
    const char *want;
} tti_limits;

typedef struct tti_tokens {
    int n;
    int32_t ids[TT_MAX_MORE_EOS + 1];
} tti_tokens;

typedef struct tti_any {
    const tt_json *node;            /* as it was read, or NULL                */
    tt_text text;                   /* to be written; not if it is empty      */
} tti_any;

/* An open file. root is the object whose members are read. */
typedef struct tti_object {
    tt_context *ctx;
    const char *file;
    tt_json *document;              /* owned */
    const tt_json *root;
} tti_object;

static tt_status tti_object_open(tti_object *r, tt_context *ctx, const char *file, const char *json,
                                 size_t size) {
    r->ctx = ctx;
    r->file = file;
    r->root = r->document = tt_json_parse(ctx, json, size);
    return r->root ? TT_OK : tti_file_fail(ctx, file, "");
}

/* A value as an error shows it: numbers by their own characters. */
static void tti_json_show(const tt_json *node, char out[64]) {
    static const char *const words[] = {"null", "", "", "", "a list", "an object"};     /* by tt_json_type */
    const char *text = node->type == TT_JSON_BOOL ? node->number != 0 ? "true" : "false" : node->string;
    if (node->type == TT_JSON_STRING) {
        snprintf(out, 64, "\"%.40s\"", text);
    } else {
        snprintf(out, 64, "%.40s", words[node->type][0] ? words[node->type] : text);
    }
}

/* "FILE: KEY is VALUE, expected WANT": all that a table refuses reads like this. */
static tt_status tti_field_fail(const tti_object *r, const char *key, const tt_json *node, const char *want) {
    char value[64];
    tti_json_show(node, value);
    return tti_refuse(r->ctx, r->file, "%s is %s, expected %s", key, value, want);
}

/* Whether a value is one of those that `fixed` lists; 1 and 0 are true and false. */
static int tti_json_is(const tt_json *node, const char *fixed) {
    char value[64];
    if (node->type == TT_JSON_NUMBER || node->type == TT_JSON_BOOL) {
        return node->number == 0 ? *fixed == 'f' : node->number == 1 && (*fixed == 't' || *fixed == '1');
    }
    tti_json_show(node, value);
    return node->type == TT_JSON_STRING && strstr(fixed, value) != NULL;
}

/* What other programs write for "this is not used". */
static int tti_json_is_empty(const tt_json *node) {
    int is_list = node->type == TT_JSON_ARRAY || node->type == TT_JSON_OBJECT;
    return is_list ? node->length == 0 : node->type == TT_JSON_BOOL && node->number == 0;
}

/* A token id or a list of them. Some files write -1 where there is none. */
static tt_status tti_tokens_read(const tti_object *r, const char *key, const tt_json *node, tti_tokens *out) {
    const tt_json *token = node->type == TT_JSON_ARRAY ? node->child : node;
    uint64_t id;
    for (out->n = 0; token; token = node->type == TT_JSON_ARRAY ? token->next : NULL) {
        if (token->type == TT_JSON_NUMBER && token->number == -1) { continue; }
        if (!tti_json_whole(token, INT_MAX, &id)) { return tti_field_fail(r, key, token, "a token id"); }
        if (out->n > TT_MAX_MORE_EOS) { return tti_field_fail(r, key, node, "at most 8 token ids"); }
        out->ids[out->n++] = (int32_t)id;
    }
    return TT_OK;
}

/* One field of an object into its place, which keeps its default where the field is missing or null (with
 * TTI_NULL_IS_0 null is 0). */
static tt_status tti_field_read(const tti_object *r, const tti_field *f, void *place) {
    static const tti_limits limits[] = {
        {(double)FLT_MIN, (double)FLT_MAX, "a number > 0"}, {0, (double)FLT_MAX, "a number >= 0"},
        {0, 1, "a number in 0..1"}
    };
    const tt_json *node = tt_json_get(r->root, f->key);
    int is_null = node && node->type == TT_JSON_NULL;
    const tti_limits *limit;
    uint64_t count = 0;
    if (!node || (is_null && !(f->set & TTI_NULL_IS_0))) { return TT_OK; }
    switch (f->kind) {
    case TTI_POSITIVE: case TTI_NOT_NEGATIVE: case TTI_FRACTION:
        limit = &limits[f->kind - TTI_POSITIVE];
        if (node->type != TT_JSON_NUMBER || !(node->number >= limit->low && node->number <= limit->high)) {
            return tti_field_fail(r, f->key, node, limit->want);
        }
        *(float *)place = (float)node->number;
        return TT_OK;
    case TTI_COUNT: case TTI_COUNT_IF:
        if (!is_null && !tti_json_whole(node, INT_MAX, &count)) {
            return tti_field_fail(r, f->key, node, "a whole number in 0..2147483647");
        }
        *(int *)place = (int)count;
        return TT_OK;
    case TTI_SWITCH:
        if (node->type != TT_JSON_BOOL) { return tti_field_fail(r, f->key, node, "true or false"); }
        *(int *)place = node->number != 0;
        return TT_OK;
    case TTI_TOKENS: return tti_tokens_read(r, f->key, node, (tti_tokens *)place);
    case TTI_ANY:
        ((tti_any *)place)->node = node;
        return TT_OK;
    case TTI_FIXED: return tti_json_is(node, f->fixed) ? TT_OK : tti_field_fail(r, f->key, node, f->fixed);
    case TTI_EMPTY: break;
    }
    return tti_json_is_empty(node) ? TT_OK : tti_field_fail(r, f->key, node, "null, false or empty");
}

/* Reads the members of a family's file into *object. */
static tt_status tti_fields_read(const tti_object *r, const tti_field *f, unsigned family, void *object) {
    tt_status status = TT_OK;
    for (; f->key && status == TT_OK; f++) {
        if (!(f->set & family) || f->set & TTI_ONLY_WRITTEN) { continue; }
        status = tti_field_read(r, f, (char *)object + f->offset);
    }
    return status;
}

static tt_status tti_tokens_write(const tti_tokens *tokens, tt_text *out) {
    tt_status status;
    int i;
    if (tokens->n == 0) { return tt_text_append(out, "null", 4); }
    if (tokens->n == 1) { return tt_text_format(out, "%d", tokens->ids[0]); }
    for (i = 0; i < tokens->n; i++) { TTI_TRY(tt_text_format(out, "%s%d", i ? ", " : "[", tokens->ids[i])); }
    status = tt_text_append(out, "]", 1);
done:
    return status;
}

/* A number with a point or an exponent, so that other readers do not take it for a whole one. */
static tt_status tti_float_write(const char *key, float value, tt_text *out) {
    char digits[48];
    if (!isfinite(value)) {
        return tt_fail(out->ctx, TT_ERR_ARG, "tt_model_config: %s is %g, expected a finite number", key,
                       (double)value);
    }
    tti_format(digits, sizeof digits, "%R", (double)value);
    return tt_text_format(out, "%s%s", digits, strpbrk(digits, ".e") ? "" : ".0");
}

/* The value of one row. null stands for 0 and for no tokens, as in the files of transformers. */
static tt_status tti_field_write(const tti_field *f, const void *place, tt_text *out) {
    const tti_any *any = (const tti_any *)place;
    switch (f->kind) {
    case TTI_POSITIVE: case TTI_NOT_NEGATIVE: case TTI_FRACTION:
        return tti_float_write(f->key, *(const float *)place, out);
    case TTI_COUNT: case TTI_COUNT_IF:
        return tt_text_format(out, *(const int *)place ? "%d" : "null", *(const int *)place);
    case TTI_SWITCH: return tt_text_format(out, "%s", *(const int *)place ? "true" : "false");
    case TTI_TOKENS: return tti_tokens_write((const tti_tokens *)place, out);
    case TTI_ANY: return tt_text_append(out, any->text.data, any->text.size);
    case TTI_FIXED: return tt_text_append(out, f->fixed, strcspn(f->fixed, " "));
    case TTI_EMPTY: break;
    }
    return TT_OK;
}

/* Writes the members of a family's file, "key": value, with `between` between them. */
static tt_status tti_fields_write(const tti_field *f, unsigned family, const void *object,
                                  const char *between, tt_text *out) {
    tt_status status = TT_OK;
    int n = 0;
    for (; f->key; f++) {
        const void *place = (const char *)object + f->offset;
        if (!(f->set & family) || f->set & TTI_ONLY_READ || f->kind == TTI_EMPTY) { continue; }
        if (f->kind == TTI_COUNT_IF && *(const int *)place == 0) { continue; }
        if (f->kind == TTI_ANY && ((const tti_any *)place)->text.size == 0) { continue; }
        TTI_TRY(tt_text_format(out, "%s\"%s\": ", n++ ? between : "", f->key));
        TTI_TRY(tti_field_write(f, place, out));
    }
done:
    return status;
}

/* ---- [tt:files.config] config.json ----
 * The members that decide what a model computes, by family. One that asks for what the model of chapter 7
 * does not do is refused: another activation, a window that slides, rotary scalings other than Llama 3's,
 * quantized weights. */

/* What Hugging Face's transformers assume, by family, of members that its config.json leaves out. kv_heads 0:
 * as many as heads; head_dim 0: hidden size / heads; window 0: none. */
typedef struct tti_family {
    const char *type, *architecture;
    unsigned bit;
    int max_positions, kv_heads, head_dim, window, tied;
    float rope_theta;
} tti_family;

static const tti_family *tti_family_find(const char *type) {
    static const tti_family families[] = {
        {"llama", "LlamaForCausalLM", TTI_IN_LLAMA, 2048, 0, 0, 0, 0, 1e4f},
        {"mistral", "MistralForCausalLM", TTI_IN_MISTRAL, 131072, 8, 0, 4096, 0, 1e4f},
        {"qwen2", "Qwen2ForCausalLM", TTI_IN_QWEN2, 32768, 32, 0, 4096, 0, 1e4f},
        {"qwen3", "Qwen3ForCausalLM", TTI_IN_QWEN3, 32768, 32, 128, 4096, 0, 1e4f},
        {"smollm3", "SmolLM3ForCausalLM", TTI_IN_SMOLLM3, 32768, 4, 0, 0, 1, 2e6f},
        {"gpt2", "GPT2LMHeadModel", TTI_IN_GPT2, 1024, 0, 0, 0, 1, 1e4f},
    };
    size_t i;
    for (i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(type, families[i].type) == 0) { return &families[i]; }
    }
    return NULL;
}

static const char tti_family_names[] = "llama, mistral, qwen2, qwen3, smollm3 or gpt2";

/* config.json as it stands there: a tt_model_config, and what this is made of. */
typedef struct tti_config {
    tt_model_config c;
    tti_tokens bos, eos, pad;
    int window, use_window, no_rope_interval;
    tti_any rope_scaling, rope_parameters, layer_types, no_rope_layers;
} tti_config;

#define TTI_AT(member) offsetof(tti_config, member)

static const tti_field tti_config_fields[] = {
    {"vocab_size", TTI_COUNT, TTI_IN_ALL, TTI_AT(c.vocab_size), NULL},
    {"n_positions", TTI_COUNT, TTI_IN_GPT2, TTI_AT(c.max_position_embeddings), NULL},
    {"n_embd", TTI_COUNT, TTI_IN_GPT2, TTI_AT(c.hidden_size), NULL},
    {"n_layer", TTI_COUNT, TTI_IN_GPT2, TTI_AT(c.num_hidden_layers), NULL},
    {"n_head", TTI_COUNT, TTI_IN_GPT2, TTI_AT(c.num_attention_heads), NULL},
    {"activation_function", TTI_FIXED, TTI_IN_GPT2, 0, "\"gelu_new\" or \"gelu_pytorch_tanh\""},
    {"n_inner", TTI_COUNT, TTI_IN_GPT2, TTI_AT(c.intermediate_size), NULL},
    {"layer_norm_epsilon", TTI_POSITIVE, TTI_IN_GPT2, TTI_AT(c.norm_eps), NULL},
    {"scale_attn_weights", TTI_FIXED, TTI_IN_GPT2 | TTI_ONLY_READ, 0, "true"},
    {"scale_attn_by_inverse_layer_idx", TTI_FIXED, TTI_IN_GPT2 | TTI_ONLY_READ, 0, "false"},
    {"add_cross_attention", TTI_FIXED, TTI_IN_GPT2 | TTI_ONLY_READ, 0, "false"},
    {"hidden_size", TTI_COUNT, TTI_IN_LLAMAS, TTI_AT(c.hidden_size), NULL},
    {"intermediate_size", TTI_COUNT, TTI_IN_LLAMAS, TTI_AT(c.intermediate_size), NULL},
    {"num_hidden_layers", TTI_COUNT, TTI_IN_LLAMAS, TTI_AT(c.num_hidden_layers), NULL},
    {"num_attention_heads", TTI_COUNT, TTI_IN_LLAMAS, TTI_AT(c.num_attention_heads), NULL},
    {"num_key_value_heads", TTI_COUNT, TTI_IN_LLAMAS | TTI_NULL_IS_0, TTI_AT(c.num_key_value_heads), NULL},
    {"max_position_embeddings", TTI_COUNT, TTI_IN_LLAMAS, TTI_AT(c.max_position_embeddings), NULL},
    {"hidden_act", TTI_FIXED, TTI_IN_LLAMAS, 0, "\"silu\""},
    {"head_dim", TTI_COUNT_IF, TTI_IN_LLAMAS | TTI_NULL_IS_0, TTI_AT(c.head_dim), NULL},
    {"attention_bias", TTI_SWITCH, TTI_IN_MISTRAL | TTI_IN_QWEN2 | TTI_ONLY_READ, TTI_AT(c.attention_bias),
     NULL},
    {"attention_bias", TTI_SWITCH, TTI_IN_LLAMA | TTI_IN_QWEN3 | TTI_IN_SMOLLM3, TTI_AT(c.attention_bias),
     NULL},
    {"mlp_bias", TTI_SWITCH, TTI_IN_MISTRAL | TTI_IN_QWEN2 | TTI_IN_QWEN3 | TTI_ONLY_READ, TTI_AT(c.mlp_bias),
     NULL},
    {"mlp_bias", TTI_SWITCH, TTI_IN_LLAMA | TTI_IN_SMOLLM3, TTI_AT(c.mlp_bias), NULL},
    {"use_sliding_window", TTI_SWITCH, TTI_IN_LLAMAS | TTI_ONLY_READ, TTI_AT(use_window), NULL},
    {"sliding_window", TTI_COUNT, TTI_IN_LLAMA | TTI_ONLY_READ | TTI_NULL_IS_0, TTI_AT(window), NULL},
    {"sliding_window", TTI_COUNT, (TTI_IN_LLAMAS - TTI_IN_LLAMA) | TTI_NULL_IS_0, TTI_AT(window), NULL},
    {"layer_types", TTI_ANY, TTI_IN_LLAMAS | TTI_ONLY_READ, TTI_AT(layer_types), NULL},
    {"rms_norm_eps", TTI_POSITIVE, TTI_IN_LLAMAS, TTI_AT(c.norm_eps), NULL},
    {"rope_theta", TTI_POSITIVE, TTI_IN_LLAMAS, TTI_AT(c.rope_theta), NULL},
    {"partial_rotary_factor", TTI_FIXED, TTI_IN_LLAMAS | TTI_ONLY_READ, 0, "1"},
    {"rope_scaling", TTI_ANY, TTI_IN_LLAMAS, TTI_AT(rope_scaling), NULL},
    {"rope_parameters", TTI_ANY, TTI_IN_LLAMAS | TTI_ONLY_READ, TTI_AT(rope_parameters), NULL},
    {"no_rope_layers", TTI_ANY, TTI_IN_SMOLLM3, TTI_AT(no_rope_layers), NULL},
    {"no_rope_layer_interval", TTI_COUNT_IF, TTI_IN_SMOLLM3, TTI_AT(no_rope_interval), NULL},
    {"tie_word_embeddings", TTI_SWITCH, TTI_IN_ALL, TTI_AT(c.tie_word_embeddings), NULL},
    {"bos_token_id", TTI_TOKENS, TTI_IN_ALL | TTI_IN_GENERATION, TTI_AT(bos), NULL},
    {"eos_token_id", TTI_TOKENS, TTI_IN_ALL | TTI_IN_GENERATION, TTI_AT(eos), NULL},
    {"pad_token_id", TTI_TOKENS, TTI_IN_ALL, TTI_AT(pad), NULL},
    {"quantization_config", TTI_FIXED, TTI_IN_ALL | TTI_ONLY_READ, 0, "null: only plain weights can be read"},
    {NULL, TTI_ANY, 0, 0, NULL}
};

/* The object rope_scaling, or rope_parameters of newer files, which holds rope_theta, too. The sets are of
 * its types in place of families. */
enum { TTI_ROPE_DEFAULT = 1, TTI_ROPE_LLAMA3 = 2, TTI_ROPES = 3 };
static const tti_field tti_rope_fields[] = {
    {"rope_type", TTI_FIXED, TTI_ROPE_LLAMA3 | TTI_ONLY_WRITTEN, 0, "\"llama3\""},
    {"original_max_position_embeddings", TTI_COUNT, TTI_ROPE_LLAMA3,
     TTI_AT(c.rope_scaling.original_max_position_embeddings), NULL},
    {"factor", TTI_POSITIVE, TTI_ROPE_LLAMA3, TTI_AT(c.rope_scaling.factor), NULL},
    {"low_freq_factor", TTI_POSITIVE, TTI_ROPE_LLAMA3, TTI_AT(c.rope_scaling.low_freq_factor), NULL},
    {"high_freq_factor", TTI_POSITIVE, TTI_ROPE_LLAMA3, TTI_AT(c.rope_scaling.high_freq_factor), NULL},
    {"rope_theta", TTI_POSITIVE, TTI_ROPES | TTI_ONLY_READ, TTI_AT(c.rope_theta), NULL},
    {"partial_rotary_factor", TTI_FIXED, TTI_ROPES | TTI_ONLY_READ, 0, "1"},
    {NULL, TTI_ANY, 0, 0, NULL}
};

/* RoPE (arXiv 2104.09864) as it is, or with the frequencies of Llama 3.1 (chapter 7, [tt:model.rope]).
 * Scalings by type "linear", "dynamic" or "yarn" would be another model, and so are frequencies by kind of
 * layer. */
static tt_status tti_config_rope(const tti_object *r, const char *key, const tt_json *node, tti_config *k) {
    const tt_rope_scaling *s = &k->c.rope_scaling;
    const char *type = tt_json_text(node, "rope_type", tt_json_text(node, "type", "default"));
    int llama3 = strcmp(type, "llama3") == 0;
    tti_object inner = *r;
    const tt_json *child;
    tt_status status;
    if (!node) { return TT_OK; }
    if (node->type != TT_JSON_OBJECT) { return tti_field_fail(r, key, node, "an object"); }
    for (child = node->child; child; child = child->next) {
        if (child->type != TT_JSON_OBJECT) { continue; }
        return tti_refuse(r->ctx, r->file, "%s holds %.40s, expected one rope for all layers", key,
                          child->key);
    }
    if (!llama3 && strcmp(type, "default") != 0) {
        return tti_refuse(r->ctx, r->file, "%s has type \"%.40s\", expected \"default\" or \"llama3\"", key,
                          type);
    }
    inner.root = node;
    status = tti_fields_read(&inner, tti_rope_fields, llama3 ? TTI_ROPE_LLAMA3 : TTI_ROPE_DEFAULT, k);
    if (status != TT_OK || !llama3) { return status; }
    if (s->factor <= 0 || s->low_freq_factor <= 0 || s->high_freq_factor <= s->low_freq_factor ||
        s->original_max_position_embeddings < 1) {
        return tti_refuse(r->ctx, r->file, "%s of type llama3 wants factor, low_freq_factor < "
                          "high_freq_factor and original_max_position_embeddings", key);
    }
    return TT_OK;
}

/* Each layer attends to all positions: there is no sliding window, or one that never slides. */
static tt_status tti_config_window(const tti_object *r, const tti_config *k) {
    const tt_json *type = k->layer_types.node ? k->layer_types.node->child : NULL;
    if (k->use_window && k->window > 0 && k->window < k->c.max_position_embeddings) {
        return tti_refuse(r->ctx, r->file, "sliding_window is %d, expected null or at least "
                          "max_position_embeddings %d", k->window, k->c.max_position_embeddings);
    }
    for (; type; type = type->next) {
        const char *text = type->type == TT_JSON_STRING ? type->string : "";
        if (strcmp(text, "full_attention") == 0) { continue; }
        return tti_refuse(r->ctx, r->file, "layer_types has \"%.40s\", expected \"full_attention\"", text);
    }
    return TT_OK;
}

/* SmolLM3 lists a 1 for each layer with rotary positions and a 0 for each without, or gives an interval; the
 * list counts. It must be one that an interval n makes: 0 for the layers n, 2 n, ..., counted from 1. */
static tt_status tti_config_no_rope(const tti_object *r, tti_config *k) {
    const tt_json *list = k->no_rope_layers.node, *node;
    int n = 0, interval = 0;
    k->c.no_rope_interval = k->no_rope_interval;
    if (!list) { return TT_OK; }
    if (list->type != TT_JSON_ARRAY) { return tti_field_fail(r, "no_rope_layers", list, "a list"); }
    if (list->length != (size_t)k->c.num_hidden_layers) {
        return tti_refuse(r->ctx, r->file, "no_rope_layers has %zu entries, expected num_hidden_layers %d",
                          list->length, k->c.num_hidden_layers);
    }
    for (node = list->child; node; node = node->next) {
        n++;
        if (node->number == 0 && interval == 0) { interval = n; }
        if ((node->number != 0) == (interval == 0 || n % interval != 0)) { continue; }
        return tti_refuse(r->ctx, r->file, "no_rope_layers[%d] is %g, expected a 0 at every %d-th layer only",
                          n - 1, node->number, interval);
    }
    k->c.no_rope_interval = interval;
    return TT_OK;
}

/* A config that steps beyond its family's own switches would come back from config.json as another model. */
static tt_status tti_config_in_family(tt_context *ctx, const tt_model_config *c) {
    const tti_family *family = tti_family_find(c->model_type);
    unsigned bit = family ? family->bit : 0;
    int out_bias = c->attention_bias && bit != TTI_IN_QWEN2;
    const char *field = NULL;
    if (!family) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_model_config: model_type is \"%s\", expected %s", c->model_type,
                       tti_family_names);
    }
    if (c->gpt2 != (bit == TTI_IN_GPT2)) { field = "gpt2"; }
    else if (c->qk_norm != (bit == TTI_IN_QWEN3)) { field = "qk_norm"; }
    else if (c->no_rope_interval && bit != TTI_IN_SMOLLM3) { field = "no_rope_interval"; }
    else if (c->mlp_bias && !(bit & (TTI_IN_LLAMA | TTI_IN_SMOLLM3))) { field = "mlp_bias"; }
    else if (bit == TTI_IN_QWEN2 && !c->attention_bias) { field = "attention_bias"; }
    else if (bit & (TTI_IN_MISTRAL | TTI_IN_GPT2) && c->attention_bias) { field = "attention_bias"; }
    else if (c->attention_out_bias != out_bias) { field = "attention_out_bias"; }
    if (!field) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "tt_model_config: %s does not have the value that a %s model has; choose "
                   "another model_type", field, family->type);
}

/* The config before its file is read: zeros, and the family's defaults. */
static void tti_config_begin(const tti_family *family, tti_config *k) {
    snprintf(k->c.model_type, sizeof k->c.model_type, "%s", family->type);
    k->c.gpt2 = family->bit == TTI_IN_GPT2;
    k->c.qk_norm = family->bit == TTI_IN_QWEN3;
    k->c.max_position_embeddings = family->max_positions;
    k->c.num_key_value_heads = family->kv_heads;
    k->c.head_dim = family->head_dim;
    k->c.norm_eps = k->c.gpt2 ? 0 : 1e-6f;
    k->c.rope_theta = family->rope_theta;
    k->c.tie_word_embeddings = family->tied;
    k->window = family->window;
    k->use_window = family->bit == TTI_IN_MISTRAL;
    k->no_rope_interval = family->bit == TTI_IN_SMOLLM3 ? 4 : 0;
}

/* The first token that ends a text is eos_token_id, all others are more_eos. -1 is none, for 0 is a token. */
static void tti_config_set_tokens(tti_config *k) {
    tt_model_config *c = &k->c;
    int i;
    c->bos_token_id = k->bos.n ? k->bos.ids[0] : -1;
    c->eos_token_id = k->eos.n ? k->eos.ids[0] : -1;
    for (i = 1; i < k->eos.n; i++) { c->more_eos[c->n_more_eos++] = k->eos.ids[i]; }
    c->has_pad_token = k->pad.n > 0;
    c->pad_token_id = k->pad.n ? k->pad.ids[0] : 0;
}

static void tti_config_get_tokens(tti_config *k) {
    const tt_model_config *c = &k->c;
    int i;
    if (c->bos_token_id >= 0) { k->bos.ids[k->bos.n++] = c->bos_token_id; }
    if (c->eos_token_id >= 0) { k->eos.ids[k->eos.n++] = c->eos_token_id; }
    for (i = 0; i < c->n_more_eos; i++) { k->eos.ids[k->eos.n++] = c->more_eos[i]; }
    if (c->has_pad_token) { k->pad.ids[k->pad.n++] = c->pad_token_id; }
}

/* *out changes only if all is well. Defaults come first, then the file, then what follows from both, then the
 * checks that every config goes through. */
static tt_status tti_config_parse(tt_context *ctx, const char *file, const char *json, size_t size,
                                  tt_model_config *out) {
    tti_object r = TT_INIT;
    tti_config k;
    const tti_family *family;
    const char *type;
    tt_status status;
    memset(&k, 0, sizeof k);
    TTI_TRY(tti_object_open(&r, ctx, file, json, size));
    type = tt_json_text(r.root, "model_type", "");
    family = tti_family_find(type);
    if (!family) {
        status = tti_refuse(ctx, file, "model_type is \"%.40s\", expected %s", type, tti_family_names);
        goto done;
    }
    tti_config_begin(family, &k);
    TTI_TRY(tti_fields_read(&r, tti_config_fields, family->bit, &k));
    TTI_TRY(tti_config_rope(&r, "rope_scaling", k.rope_scaling.node, &k));
    TTI_TRY(tti_config_rope(&r, "rope_parameters", k.rope_parameters.node, &k));
    TTI_TRY(tti_config_window(&r, &k));
    TTI_TRY(tti_config_no_rope(&r, &k));
    tti_config_set_tokens(&k);
    k.c.attention_out_bias = k.c.attention_bias && family->bit != TTI_IN_QWEN2;
    if (family->bit == TTI_IN_QWEN2) { k.c.attention_bias = 1; }
    if (tti_config_resolve(ctx, &k.c) != TT_OK || tti_config_in_family(ctx, &k.c) != TT_OK) {
        status = tti_file_fail(ctx, file, "");
        goto done;
    }
    *out = k.c;
done:
    tt_json_free(ctx, r.document);
    return status;
}

TT_API tt_status tt_model_config_parse(tt_context *ctx, const char *json, size_t size, tt_model_config *out) {
    return tti_tried(ctx, "tt_model_config_parse", tti_config_parse(ctx, "config.json", json, size, out));
}

/* From the resolved config k->c to the members as they are written: 0 where a default says the same. Qwen2
 * and SmolLM3 have no head_dim of their own. */
static tt_status tti_config_unresolve(tti_config *k, const tti_family *family) {
    tt_model_config *c = &k->c;
    tt_text *rope = &k->rope_scaling.text, *layers = &k->no_rope_layers.text;
    tt_status status = TT_OK;
    int i, is_default;
    tti_config_get_tokens(k);
    k->no_rope_interval = c->no_rope_interval;
    if (c->gpt2 && c->intermediate_size == 4 * c->hidden_size) { c->intermediate_size = 0; }
    is_default = c->head_dim * c->num_attention_heads == c->hidden_size;
    if (is_default && family->bit & (TTI_IN_QWEN2 | TTI_IN_SMOLLM3)) { c->head_dim = 0; }
    if (c->rope_scaling.factor > 0) {
        TTI_TRY(tt_text_append(rope, "{", 1));
        TTI_TRY(tti_fields_write(tti_rope_fields, TTI_ROPE_LLAMA3, k, ", ", rope));
        TTI_TRY(tt_text_append(rope, "}", 1));
    }
    if (family->bit != TTI_IN_SMOLLM3) { goto done; }
    for (i = 1; i <= c->num_hidden_layers; i++) {
        int has_rope = c->no_rope_interval == 0 || i % c->no_rope_interval != 0;
        TTI_TRY(tt_text_format(layers, "%s%d", i > 1 ? ", " : "[", has_rope));
    }
    status = tt_text_append(layers, "]", 1);
done:
    return status;
}

/* Appends to out, or leaves it as it was. The config is resolved first: a file says all that it decides. */
static tt_status tti_config_json(const tt_model_config *config, tt_dtype dtype, tt_text *out) {
    static const char *const torch_types[] = {"float32", "bfloat16", "float16"};        /* by tt_dtype */
    tti_config k;
    const tti_family *family;
    size_t before = out->size;
    tt_status status;
    memset(&k, 0, sizeof k);
    k.c = *config;
    k.rope_scaling.text.ctx = k.no_rope_layers.text.ctx = out->ctx;
    TTI_TRY(tti_config_resolve(out->ctx, &k.c));
    TTI_TRY(tti_config_in_family(out->ctx, &k.c));
    family = tti_family_find(k.c.model_type);
    TTI_TRY(tti_config_unresolve(&k, family));
    TTI_TRY(tt_text_format(out, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n  ",
                           family->architecture, family->type));
    TTI_TRY(tti_fields_write(tti_config_fields, family->bit, &k, ",\n  ", out));
    TTI_TRY(tt_text_format(out, ",\n  \"torch_dtype\": \"%s\"\n}\n", torch_types[dtype]));
done:
    if (status != TT_OK && out->data) {
        out->size = before;
        out->data[before] = 0;
    }
    tt_text_free(&k.rope_scaling.text);
    tt_text_free(&k.no_rope_layers.text);
    return status;
}

TT_API tt_status tt_model_config_json(const tt_model_config *config, tt_text *out) {
    return tti_config_json(config, TT_F32, out);
}
#undef TTI_AT

/* ---- [tt:files.generation] generation_config.json ----
 * How the makers of a model sample from it. The text is kept and written again as it was. */

typedef struct tti_generation_file {
    tti_generation g;
    tti_tokens eos;
} tti_generation_file;

#define TTI_AT(member) offsetof(tti_generation_file, member)
static const tti_field tti_generation_fields[] = {
    {"do_sample", TTI_SWITCH, TTI_IN_ALL, TTI_AT(g.do_sample), NULL},
    {"temperature", TTI_NOT_NEGATIVE, TTI_IN_ALL, TTI_AT(g.temperature), NULL},
    {"top_k", TTI_COUNT, TTI_IN_ALL, TTI_AT(g.top_k), NULL},
    {"top_p", TTI_FRACTION, TTI_IN_ALL, TTI_AT(g.top_p), NULL},
    {"min_p", TTI_FRACTION, TTI_IN_ALL, TTI_AT(g.min_p), NULL},
    {"repetition_penalty", TTI_POSITIVE, TTI_IN_ALL, TTI_AT(g.repetition_penalty), NULL},
    {"eos_token_id", TTI_TOKENS, TTI_IN_ALL, TTI_AT(eos), NULL},
    {NULL, TTI_ANY, 0, 0, NULL}
};
#undef TTI_AT

/* Fields that are not given stay as config.json has them. A top_p or temperature of 0 wants the likeliest
 * token alone; in tti_generation 0 is "not given". */
static tt_status tti_generation_parse(tt_context *ctx, const char *file, const char *text, size_t size,
                                      tti_generation *g) {
    tti_object r = TT_INIT;
    tti_generation_file k;
    tt_status status;
    memset(&k, 0, sizeof k);
    k.g = *g;
    k.g.temperature = k.g.top_p = -1;
    TTI_TRY(tti_object_open(&r, ctx, file, text, size));
    TTI_TRY(tti_fields_read(&r, tti_generation_fields, TTI_IN_ALL, &k));
    if (k.g.temperature == 0) { k.g.do_sample = 0; }
    if (k.g.temperature < 0) { k.g.temperature = g->temperature; }
    if (k.g.top_p == 0) { k.g.top_p = FLT_MIN; }
    if (k.g.top_p < 0) { k.g.top_p = g->top_p; }
    if (k.eos.n > 0) {
        memcpy(k.g.stops, k.eos.ids, sizeof k.eos.ids);
        k.g.n_stops = k.eos.n;
    }
    k.g.text = tti_strdup(ctx, text);
    if (!k.g.text) {
        status = TT_ERR_MEM;
        goto done;
    }
    *g = k.g;
done:
    tt_json_free(ctx, r.document);
    return status;
}

/* Without a file that was read, a new one has the tokens of config.json. */
static tt_status tti_generation_json(const tt_model *m, tt_text *out) {
    const char *text = m->generation.text;
    tti_config k;
    tt_status status;
    if (text) { return tt_text_append(out, text, strlen(text)); }
    memset(&k, 0, sizeof k);
    k.c = m->config;
    tti_config_get_tokens(&k);
    TTI_TRY(tt_text_append(out, "{\n  ", 4));
    TTI_TRY(tti_fields_write(tti_config_fields, TTI_IN_GENERATION, &k, ",\n  ", out));
    TTI_TRY(tt_text_append(out, "\n}\n", 3));
done:
    return status;
}

TT_API tt_sampling tt_model_sampling(const tt_model *m) {
    const tti_generation *g = &m->generation;
    tt_sampling s = TT_INIT;
    s.greedy = !g->do_sample;
    s.temperature = g->temperature;
    s.top_k = g->top_k;
    s.top_p = g->top_p;
    s.min_p = g->min_p;
    s.repetition_penalty = g->repetition_penalty;
    s.stop_tokens = g->stops;
    s.n_stop_tokens = g->n_stops;
    return s;
}

/* ---- [tt:files.directory] reading a model directory ----
 *     config.json                      [tt:files.config]
 *     model.safetensors                the weights by the names of Hugging Face; or, in several files,
 *     model.safetensors.index.json     {"metadata": {"total_size": n}, "weight_map": {"name": "file", ...}}
 *     generation_config.json           [tt:files.generation]; may be missing
 *     chat_template.jinja              a text; may be missing, then it is the member chat_template of
 *     tokenizer_config.json            which may be missing, too
 *     tokenizer.json                   chapter 6; not read here */

typedef struct tti_folder {
    tt_context *ctx;
    const char *dir;
    tt_text path;                   /* of the file that was named last                     */
    tt_text text;                   /* of the file that was read last                      */
    int found;                      /* whether the last one that may be missing was there  */
} tti_folder;

static void tti_folder_open(tti_folder *d, tt_context *ctx, const char *dir) {
    memset(d, 0, sizeof *d);
    d->ctx = d->path.ctx = d->text.ctx = ctx;
    d->dir = dir;
}

static void tti_folder_close(tti_folder *d) {
    tt_text_free(&d->path);
    tt_text_free(&d->text);
}

/* An empty name would make the path one of the root directory. */
static tt_status tti_folder_name(tti_folder *d, const char *name) {
    d->path.size = 0;
    if (!*d->dir) {
        return tt_fail(d->ctx, TT_ERR_ARG, "cannot open %s: the name of its folder is empty", name);
    }
    return tt_text_format(&d->path, "%s/%s", d->dir, name);
}

/* For a file that may be missing: then the text is empty. */
static tt_status tti_folder_read_if(tti_folder *d, const char *name) {
    tt_status status = tti_folder_name(d, name);
    d->text.size = 0;
    d->found = status == TT_OK && tt_file_exists(d->path.data);
    return d->found ? tt_file_read(d->ctx, d->path.data, &d->text) : status;
}

static tt_status tti_folder_read(tti_folder *d, const char *name) {
    tt_status status = tti_folder_read_if(d, name);
    return status == TT_OK && !d->found ? tt_file_read(d->ctx, d->path.data, &d->text) : status;
}

static tt_status tti_folder_write(tti_folder *d, const char *name, const tt_text *text) {
    tt_status status = tti_folder_name(d, name);
    return status == TT_OK ? tt_file_write(d->ctx, d->path.data, text->data, text->size) : status;
}

/* The files of the weights are a list, by `next`. A mapped model owns them as long as it lives. */
static void tti_shards_release(void *shards) {
    tt_safetensors *file = (tt_safetensors *)shards, *next;
    for (; file; file = next) {
        next = file->next;
        tt_safetensors_close(file);
    }
}

/* Opens the file that d->path names, at the end of the list, unless it is open. */
static tt_status tti_shards_add(tt_safetensors **list, const tti_folder *d) {
    for (; *list; list = &(*list)->next) {
        if (strcmp((*list)->path, d->path.data) == 0) { return TT_OK; }
    }
    *list = tt_safetensors_open(d->ctx, d->path.data);
    return *list ? TT_OK : tt_error_status(d->ctx);
}

/* The files that model.safetensors.index.json names. */
static tt_status tti_shards_index(tt_safetensors **list, tti_folder *d) {
    static const char *const index = "model.safetensors.index.json";
    tt_json *root = NULL;
    const tt_json *map, *node;
    int found;
    tt_status status;
    TTI_TRY(tti_folder_read_if(d, index));
    if (!d->found) {
        return tt_fail(d->ctx, TT_ERR_IO, "%s: neither model.safetensors nor %s can be read", d->dir, index);
    }
    root = tt_json_parse(d->ctx, d->text.data, d->text.size);
    TTI_TRY(root ? TT_OK : tti_file_fail(d->ctx, d->path.data, ""));
    map = tt_json_get(root, "weight_map");
    found = map && map->type == TT_JSON_OBJECT && map->length;
    TTI_TRY(found ? TT_OK : tti_refuse(d->ctx, d->path.data, "no weight_map"));
    for (node = map->child; node; node = node->next) {
        const char *name = node->type == TT_JSON_STRING ? node->string : "";
        if (!name[0] || strpbrk(name, "/\\")) {
            status = tt_fail(d->ctx, TT_ERR_FILE, "%s/%s: weight_map names \"%s\", expected a file beside it",
                             d->dir, index, name);
            goto done;
        }
        TTI_TRY(tti_folder_name(d, name));
        if (!tt_file_exists(d->path.data)) {
            status = tt_fail(d->ctx, TT_ERR_FILE, "%s/%s: weight_map names \"%s\", which is not there",
                             d->dir, index, name);
            goto done;
        }
        TTI_TRY(tti_shards_add(list, d));
    }
done:
    tt_json_free(d->ctx, root);
    return status;
}

/* model.safetensors counts, should there be old shards beside it. */
static tt_status tti_shards_open(tt_safetensors **list, tti_folder *d) {
    tt_status status = tti_folder_name(d, "model.safetensors");
    if (status != TT_OK) { return status; }
    return tt_file_exists(d->path.data) ? tti_shards_add(list, d) : tti_shards_index(list, d);
}

/* The file that stores a tensor, and its index there; or NULL. Files of GPT-2 may leave out
 * "transformer.". */
static tt_safetensors *tti_shards_find(tt_safetensors *list, const char *name, int *index) {
    tt_safetensors *file = list;
    for (; file; file = file->next) {
        *index = tt_safetensors_find(file, name);
        if (*index >= 0) { return file; }
    }
    return strncmp(name, "transformer.", 12) == 0 ? tti_shards_find(list, name + 12, index) : NULL;
}

/* A tied pair may be stored under either name. */
static tt_safetensors *tti_shards_find_param(tt_safetensors *list, const tt_model *m, const tt_tensor *t,
                                             int *index) {
    tt_safetensors *file = tti_shards_find(list, t->name, index);
    return !file && t == m->embedding && t == m->head ? tti_shards_find(list, "lm_head.weight", index) : file;
}

/* A pair that config.json ties but the files hold twice, with two values, is not tied, as in transformers. */
static void tti_shards_untie(tt_safetensors *list, tt_model_config *c) {
    int i, k;
    const char *embedding = c->gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight";
    tt_safetensors *a = tti_shards_find(list, embedding, &i);
    tt_safetensors *b = tti_shards_find(list, "lm_head.weight", &k);
    const tti_entry *x = a ? &a->entries[i] : NULL, *y = b ? &b->entries[k] : NULL;
    if (!x || !y || !c->tie_word_embeddings) { return; }
    c->tie_word_embeddings = strcmp(x->type, y->type) == 0 && x->info.size == y->info.size &&
                             memcmp(a->bytes + x->begin, b->bytes + y->begin, x->end - x->begin) == 0;
}

/* Buffers that old files carry along. */
static int tti_is_buffer(const char *name) {
    static const char *const ends[] = {".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"};
    size_t n = strlen(name), i;
    for (i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t m = strlen(ends[i]);
        if (n >= m && strcmp(name + n - m, ends[i]) == 0) { return 1; }
    }
    return 0;
}

/* A tensor of the files must be a parameter, and stored once. */
static tt_status tti_shards_check(tt_safetensors *list, const tt_model *m, const tt_safetensors *file,
                                  int index) {
    const char *name = file->entries[index].info.name;
    const tt_tensor *t = tt_model_param_find(m, name);
    const tt_safetensors *first;
    char longer[256];
    int k;
    snprintf(longer, sizeof longer, "transformer.%s", name);
    if (!t && m->config.gpt2) { t = tt_model_param_find(m, longer); }
    if (t) {
        first = tti_shards_find(list, t->name, &k);
        if (first == file && k == index) { return TT_OK; }
        return tti_refuse(m->ctx, file->path, "tensor %s is stored twice, also in %s", name, first->path);
    }
    if (tti_is_buffer(name) || (m->config.tie_word_embeddings && strcmp(name, "lm_head.weight") == 0)) {
        return TT_OK;
    }
    return tti_refuse(m->ctx, file->path, "tensor %s is no parameter of a %s model", name,
                      m->config.model_type);
}

/* The shapes of all, before there is memory for any: a config may promise far more than its files hold. */
static tt_status tti_model_check(const tt_model *m, tt_safetensors *list, const char *dir) {
    tt_status status = TT_OK;
    tt_safetensors *file;
    int i, k;
    for (i = 0; i < m->n_params; i++) {
        const tt_tensor *t = m->params[i];
        file = tti_shards_find_param(list, m, t, &k);
        if (!file) {
            const char *why = t == m->head ? " (tie_word_embeddings is false)" : "";
            return tti_refuse(m->ctx, dir, "tensor %s is missing%s", t->name, why);
        }
        TTI_TRY(tti_entry_fits(file, k, t, "config wants"));
    }
    for (file = list; file; file = file->next) {
        for (k = 0; k < (int)file->n; k++) { TTI_TRY(tti_shards_check(list, m, file, k)); }
    }
done:
    return status;
}

/* What of a file can serve as it is: float32, and half precision where the model multiplies by it; embedding
 * and head only in bf16, and only where the backend reads it. */
static int tti_param_as_stored(const tt_model *m, const tt_tensor *t, tt_dtype dtype) {
    if (dtype == TT_F32) { return 1; }
    if (t == m->embedding || t == m->head) { return dtype == TT_BF16 && m->ctx->backend->takes_half; }
    return (dtype == TT_BF16 || dtype == TT_F16) && t->ndim == 2 && t != m->positions;
}

/* The data of a parameter: a place in the mapped file, or memory of its own. Older writers do not align
 * data. */
static tt_status tti_param_read(const tt_model *m, tt_tensor *t, tt_safetensors *list, int map) {
    int k;
    tt_safetensors *file = tti_shards_find_param(list, m, t, &k);
    const unsigned char *bytes = file->bytes + file->entries[k].begin;
    tt_dtype dtype = file->entries[k].info.dtype;
    if (map) {
        t->requires_grad = 0;
        if (tti_param_as_stored(m, t, dtype)) { t->dtype = dtype; }
        if (t->dtype == dtype && m->ctx->backend == tt_cpu_backend() &&
            (uintptr_t)bytes % tti_dtype_bytes(dtype) == 0) {
            t->data = (void *)(uintptr_t)bytes;
            t->lent = 1;
            return TT_OK;
        }
    }
    return tti_tensor_fill(file, k, t);
}

/* What it says of sampling and of the end of texts goes before config.json. */
static tt_status tti_model_read_generation(tt_model *m, tti_folder *d) {
    tt_status status = tti_folder_read_if(d, "generation_config.json");
    if (status != TT_OK || !d->found) { return status; }
    return tti_generation_parse(m->ctx, d->path.data, d->text.data, d->text.size, &m->generation);
}

/* chat_template of tokenizer_config.json: a text or, of a list, the one named "default". */
static const tt_json *tti_chat_template_of(const tt_json *config) {
    const tt_json *node = tt_json_get(config, "chat_template"), *item;
    for (item = node && node->type == TT_JSON_ARRAY ? node->child : NULL; item; item = item->next) {
        if (strcmp(tt_json_text(item, "name", ""), "default") != 0) { continue; }
        node = tt_json_get(item, "template");
        break;
    }
    return node && node->type == TT_JSON_STRING ? node : NULL;
}

/* The chat template: a file of its own, as transformers writes it now, or a field of tokenizer_config.json,
 * as it did before. A model without one is no error. */
static tt_status tti_model_read_template(tt_model *m, tti_folder *d) {
    tt_json *root = NULL;
    const tt_json *node;
    const char *text;
    size_t size;
    tt_status status;
    TTI_TRY(tti_folder_read_if(d, "chat_template.jinja"));
    text = d->text.data;
    size = d->text.size;
    if (size == 0) {
        TTI_TRY(tti_folder_read_if(d, "tokenizer_config.json"));
        if (d->text.size == 0) { return TT_OK; }
        root = tt_json_parse(m->ctx, d->text.data, d->text.size);
        TTI_TRY(root ? TT_OK : tti_file_fail(m->ctx, d->path.data, ""));
        node = tti_chat_template_of(root);
        if (!node) { goto done; }
        text = node->string;
        size = node->length;
    }
    if (memchr(text, 0, size)) {
        status = tti_refuse(m->ctx, d->path.data, "the chat template holds a byte 0");
        goto done;
    }
    m->chat_template = tti_strdup(m->ctx, text);
    status = m->chat_template ? TT_OK : TT_ERR_MEM;
done:
    tt_json_free(m->ctx, root);
    return status;
}

TT_API const char *tt_model_chat_format(const tt_model *m) {
    return m->chat_template ? tt_chat_recognize(m->ctx, m->chat_template, strlen(m->chat_template)) : "";
}

/* In this order: nothing is allocated for weights before config.json, the headers of all files and all shapes
 * are known to fit each other. */
static tt_model *tti_model_open(tt_context *ctx, const char *dir, int map) {
    tt_safetensors *files = NULL;
    int i, owned = 0;
    tti_folder d;
    tt_model_config config;
    tt_model *m = NULL;
    tt_status status;
    tti_folder_open(&d, ctx, dir);
    TTI_TRY(tti_folder_read(&d, "config.json"));
    TTI_TRY(tti_config_parse(ctx, d.path.data, d.text.data, d.text.size, &config));
    TTI_TRY(tti_shards_open(&files, &d));
    tti_shards_untie(files, &config);
    m = tti_model_new(ctx, &config, NULL);
    TTI_TRY(m ? TT_OK : TT_ERR_MEM);
    if (map) {                          /* the model has the files from here on */
        m->lent_to = files;
        m->release = tti_shards_release;
        owned = 1;
    }
    TTI_TRY(tti_model_check(m, files, dir));
    for (i = 0; i < m->n_params; i++) { TTI_TRY(tti_param_read(m, m->params[i], files, map)); }
    TTI_TRY(tti_model_read_generation(m, &d));
    TTI_TRY(tti_model_read_template(m, &d));
done:
    if (status != TT_OK) {
        tt_model_destroy(m);
        m = NULL;
    }
    if (!owned) { tti_shards_release(files); }
    tti_folder_close(&d);
    return m;
}

TT_API tt_model *tt_model_load(tt_context *ctx, const char *dir) {
    return (tt_model *)tti_made(ctx, "tt_model_load", tti_model_open(ctx, dir, 0));
}

TT_API tt_model *tt_model_map(tt_context *ctx, const char *dir) {
    return (tt_model *)tti_made(ctx, "tt_model_map", tti_model_open(ctx, dir, 1));
}

/* ---- [tt:files.save] writing a model directory ----
 * config.json comes last: without it there is no model, should the disk be full before. */

static tt_status tti_save_file(tti_folder *d, const char *name, const tti_contents *c) {
    tt_status status = tti_folder_name(d, name);
    return status == TT_OK ? tti_safetensors_write(d->ctx, d->path.data, c) : status;
}

/* How many tensors, from `first` on, go into one file of at most max_bytes. */
static int tti_shard_length(const tti_contents *c, int first, size_t max_bytes) {
    size_t bytes = 0;
    int i;
    for (i = first; i < c->n; i++) {
        bytes += tti_contents_bytes(c, i);
        if (i > first && max_bytes > 0 && bytes > max_bytes) { break; }
    }
    return i - first;
}

/* The tensors in their order, cut before each one that would pass max_bytes, and an index of all. */
static tt_status tti_save_shards(tti_folder *d, const tti_contents *c, size_t max_bytes) {
    tti_contents part = *c;
    tt_text index = TT_INIT;
    int i, at, count = 0, number = 0;
    size_t bytes = 0;
    char name[64];
    tt_status status;
    for (i = 0; i < c->n; i++) { bytes += tti_contents_bytes(c, i); }
    for (at = 0; at < c->n; at += tti_shard_length(c, at, max_bytes)) { count++; }
    index.ctx = d->ctx;
    TTI_TRY(tt_text_format(&index, "{\n  \"metadata\": {\"total_size\": %zu},\n  \"weight_map\": {", bytes));
    for (at = 0; at < c->n; at += part.n) {
        part.tensors = c->tensors + at;
        part.n = tti_shard_length(c, at, max_bytes);
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", ++number, count);
        TTI_TRY(tti_save_file(d, name, &part));
        for (i = 0; i < part.n; i++) {
            TTI_TRY(tt_text_format(&index, "%s\n    ", at + i ? "," : ""));
            TTI_TRY(tt_text_json(&index, part.tensors[i].name, strlen(part.tensors[i].name)));
            TTI_TRY(tt_text_format(&index, ": \"%s\"", name));
        }
    }
    TTI_TRY(tt_text_format(&index, "\n  }\n}\n"));
    TTI_TRY(tti_folder_write(d, "model.safetensors.index.json", &index));
    TTI_TRY(tti_folder_name(d, "model.safetensors"));
    remove(d->path.data);           /* an older single file would count */
done:
    tt_text_free(&index);
    return status;
}

/* params[from .. to) with a prefix before their names, which stand one after another in `names`. */
static tt_named *tti_named_params(const tt_model *m, int from, int to, const char *prefix, tt_text *names) {
    tt_named *list = (tt_named *)tt_alloc(m->ctx, (size_t)(to - from), sizeof *list);
    size_t at = 0;
    int i;
    for (i = from; list && i < to; i++) {
        if (tt_text_format(names, "%s%s%c", prefix, m->params[i]->name, 0) == TT_OK) { continue; }
        tt_free(m->ctx, list, (size_t)(to - from), sizeof *list);
        return NULL;
    }
    for (i = from; list && i < to; i++) {           /* only now: a text that grows moves */
        list[i - from].name = names->data + at;
        list[i - from].tensor = m->params[i];
        at += strlen(names->data + at) + 1;
    }
    return list;
}

/* "eos_token": "<end>", if the id is one of the tokenizer's special tokens. */
static tt_status tti_save_token(const tt_tokenizer *t, const char *key, int32_t id, tt_text *out) {
    tt_status status = TT_OK;
    if (id < 0 || id >= tt_vocab_size(t) || !tt_token_is_special(t, id)) { return TT_OK; }
    TTI_TRY(tt_text_format(out, "  \"%s\": ", key));
    TTI_TRY(tt_text_json(out, tti_token_bytes(t, &t->tokens[id]), t->tokens[id].size));
    TTI_TRY(tt_text_append(out, ",\n", 2));
done:
    return status;
}

/* tokenizer_config.json has what transformers reads beside tokenizer.json: special tokens and the chat
 * template. */
static tt_status tti_save_tokenizer(const tt_model *m, const tt_tokenizer *tokenizer, tti_folder *d) {
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = m->ctx;
    TTI_TRY(tt_tokenizer_json(tokenizer, &text));
    TTI_TRY(tti_folder_write(d, "tokenizer.json", &text));
    text.size = 0;
    TTI_TRY(tt_text_append(&text, "{\n", 2));
    TTI_TRY(tti_save_token(tokenizer, "bos_token", m->config.bos_token_id, &text));
    TTI_TRY(tti_save_token(tokenizer, "eos_token", m->config.eos_token_id, &text));
    if (m->chat_template) {
        TTI_TRY(tt_text_format(&text, "  \"chat_template\": "));
        TTI_TRY(tt_text_json(&text, m->chat_template, strlen(m->chat_template)));
        TTI_TRY(tt_text_append(&text, ",\n", 2));
    }
    TTI_TRY(tt_text_format(&text, "  \"clean_up_tokenization_spaces\": false,\n  \"tokenizer_class\": "
                           "\"PreTrainedTokenizerFast\",\n  \"model_max_length\": %d\n}\n",
                           m->config.max_position_embeddings));
    TTI_TRY(tti_folder_write(d, "tokenizer_config.json", &text));
done:
    tt_text_free(&text);
    return status;
}

/* All texts and the scan come before the first file, so that a model which cannot be written leaves a good
 * one as it is. */
static tt_status tti_model_save(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir,
                                const tt_save_desc *desc) {
    tt_context *ctx = m->ctx;
    tti_contents c = TT_INIT;
    tt_text names = TT_INIT, config = TT_INIT, generation = TT_INIT;
    tt_named *list;
    tti_folder d;
    tt_status status;
    names.ctx = config.ctx = generation.ctx = ctx;
    tti_folder_open(&d, ctx, dir);
    c.tensors = list = tti_named_params(m, 0, m->n_params, "", &names);
    c.n = m->n_params;
    c.dtype = desc->dtype;
    TTI_TRY(list ? tti_config_json(&m->config, desc->dtype, &config) : TT_ERR_MEM);
    TTI_TRY(tti_generation_json(m, &generation));
    TTI_TRY(tti_contents_scan(ctx, dir, &c));
    TTI_TRY(tt_make_dirs(ctx, dir));
    if (tti_shard_length(&c, 0, desc->max_shard_bytes) < c.n) {
        TTI_TRY(tti_save_shards(&d, &c, desc->max_shard_bytes));
    } else {
        TTI_TRY(tti_save_file(&d, "model.safetensors", &c));
    }
    if (tokenizer) { TTI_TRY(tti_save_tokenizer(m, tokenizer, &d)); }
    TTI_TRY(tti_folder_write(&d, "generation_config.json", &generation));
    TTI_TRY(tti_folder_write(&d, "config.json", &config));
done:
    tt_free(ctx, list, (size_t)m->n_params, sizeof *list);
    tti_folder_close(&d);
    tt_text_free(&generation);
    tt_text_free(&config);
    tt_text_free(&names);
    return status;
}

TT_API tt_status tt_model_save_as(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir,
                                  const tt_save_desc *desc) {
    tt_status status;
    if (m->lora.rank) {
        status = tt_fail(m->ctx, TT_ERR_ARG, "tt_model_save: the model has adapters: merge them first, or "
                         "save them with tt_model_lora_save");
    } else if (desc->dtype != TT_F32 && desc->dtype != TT_BF16 && desc->dtype != TT_F16) {
        status = tt_fail(m->ctx, TT_ERR_ARG, "tt_model_save_as: dtype is %d, expected TT_F32, TT_BF16 or "
                         "TT_F16", desc->dtype);
    } else {
        status = tti_model_save(m, tokenizer, dir, desc);
    }
    return tti_tried(m->ctx, "tt_model_save_as", status);
}

TT_API tt_status tt_model_save(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir) {
    static const tt_save_desc desc = TT_INIT;
    return tt_model_save_as(m, tokenizer, dir, &desc);
}

/* ---- [tt:files.adapters] adapters ----
 * A directory of Hugging Face's peft: adapter_config.json, and adapter_model.safetensors with the tensors
 * base_model.model.MODULE.lora_A.weight and ...lora_B.weight. */

#define TTI_PEFT_PREFIX "base_model.model."

typedef struct tti_lora_file {
    tt_lora_desc d;
    tti_any target_modules;
} tti_lora_file;

/* The empty ones would make an adapter compute something else than scale (x A^T) B^T on whole matrices. */
#define TTI_AT(member) offsetof(tti_lora_file, member)
static const tti_field tti_lora_fields[] = {
    {"peft_type", TTI_FIXED, TTI_IN_ALL, 0, "\"LORA\""},
    {"task_type", TTI_FIXED, TTI_IN_ALL | TTI_ONLY_WRITTEN, 0, "\"CAUSAL_LM\""},
    {"r", TTI_COUNT, TTI_IN_ALL, TTI_AT(d.rank), NULL},
    {"lora_alpha", TTI_POSITIVE, TTI_IN_ALL, TTI_AT(d.alpha), NULL},
    {"use_rslora", TTI_SWITCH, TTI_IN_ALL, TTI_AT(d.use_rslora), NULL},
    {"lora_dropout", TTI_FIXED, TTI_IN_ALL | TTI_ONLY_WRITTEN, 0, "0.0"},
    {"bias", TTI_FIXED, TTI_IN_ALL, 0, "\"none\""},
    {"fan_in_fan_out", TTI_FIXED, TTI_IN_GPT2 | TTI_ONLY_WRITTEN, 0, "true"},
    {"fan_in_fan_out", TTI_FIXED, TTI_IN_LLAMAS | TTI_ONLY_WRITTEN, 0, "false"},
    {"inference_mode", TTI_FIXED, TTI_IN_ALL | TTI_ONLY_WRITTEN, 0, "true"},
    {"base_model_name_or_path", TTI_FIXED, TTI_IN_ALL | TTI_ONLY_WRITTEN, 0, "null"},
    {"target_modules", TTI_ANY, TTI_IN_ALL, TTI_AT(target_modules), NULL},
    {"use_dora", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"use_qalora", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"use_bdlora", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"lora_bias", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"modules_to_save", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"rank_pattern", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"alpha_pattern", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"layers_to_transform", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"layers_pattern", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"exclude_modules", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"target_parameters", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"trainable_token_indices", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"layer_replication", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {"alora_invocation_tokens", TTI_EMPTY, TTI_IN_ALL, 0, NULL},
    {NULL, TTI_ANY, 0, 0, NULL}
};
#undef TTI_AT

/* "q_proj" of "model.layers.0.self_attn.q_proj.lora_A.weight"; its length in n. */
static const char *tti_lora_module(const tt_tensor *a, size_t *n) {
    const char *end = a->name + strlen(a->name) - strlen(".lora_A.weight"), *begin = end;
    while (begin > a->name && begin[-1] != '.') { begin--; }
    *n = (size_t)(end - begin);
    return begin;
}

/* Whether an adapter before params[i] has the same last name of its module. */
static int tti_lora_is_listed(const tt_model *m, int i) {
    size_t n, length;
    const char *module = tti_lora_module(m->params[i], &n);
    int k;
    for (k = m->n_base; k < i; k += 2) {
        const char *earlier = tti_lora_module(m->params[k], &length);
        if (n == length && memcmp(module, earlier, n) == 0) { return 1; }
    }
    return 0;
}

/* A list of the targets as they were given, or of the last names of all modules that have an adapter. */
static tt_status tti_lora_targets(const tt_model *m, tt_text *out) {
    tt_status status;
    size_t n;
    int i;
    TTI_TRY(tt_text_append(out, "[", 1));
    for (i = 0; i < m->lora.n_target_modules; i++) {
        TTI_TRY(tt_text_append(out, ", ", i ? 2 : 0));
        TTI_TRY(tt_text_json(out, m->lora_targets[i], strlen(m->lora_targets[i])));
    }
    for (i = m->n_base; i < m->n_params && m->lora.n_target_modules == 0; i += 2) {
        const char *module = tti_lora_module(m->params[i], &n);
        if (tti_lora_is_listed(m, i)) { continue; }
        TTI_TRY(tt_text_append(out, ", ", i > m->n_base ? 2 : 0));
        TTI_TRY(tt_text_json(out, module, n));
    }
    status = tt_text_append(out, "]", 1);
done:
    return status;
}

static tt_status tti_lora_json(const tt_model *m, tt_text *out) {
    tti_lora_file k;
    tt_status status;
    memset(&k, 0, sizeof k);
    k.d = m->lora;
    k.target_modules.text.ctx = m->ctx;
    TTI_TRY(tti_lora_targets(m, &k.target_modules.text));
    TTI_TRY(tt_text_append(out, "{\n  ", 4));
    TTI_TRY(tti_fields_write(tti_lora_fields, m->config.gpt2 ? TTI_IN_GPT2 : TTI_IN_LLAMA, &k, ",\n  ", out));
    TTI_TRY(tt_text_append(out, "\n}\n", 3));
done:
    tt_text_free(&k.target_modules.text);
    return status;
}

/* A folder as PEFT writes and reads it: adapter_model.safetensors, adapter_config.json. */
static tt_status tti_model_lora_save(const tt_model *m, const char *dir) {
    tt_context *ctx = m->ctx;
    tti_contents c = TT_INIT;
    tt_text names = TT_INIT, config = TT_INIT;
    tt_named *list;
    tti_folder d;
    tt_status status;
    names.ctx = config.ctx = ctx;
    tti_folder_open(&d, ctx, dir);
    c.tensors = list = tti_named_params(m, m->n_base, m->n_params, TTI_PEFT_PREFIX, &names);
    c.n = m->n_params - m->n_base;
    TTI_TRY(list ? tti_lora_json(m, &config) : TT_ERR_MEM);
    TTI_TRY(tti_contents_scan(ctx, dir, &c));
    TTI_TRY(tt_make_dirs(ctx, dir));
    TTI_TRY(tti_save_file(&d, "adapter_model.safetensors", &c));
    TTI_TRY(tti_folder_write(&d, "adapter_config.json", &config));
done:
    tt_free(ctx, list, (size_t)c.n, sizeof *list);
    tti_folder_close(&d);
    tt_text_free(&config);
    tt_text_free(&names);
    return status;
}

TT_API tt_status tt_model_lora_save(const tt_model *m, const char *dir) {
    tt_status status;
    if (m->lora.rank) { status = tti_model_lora_save(m, dir); }
    else { status = tt_fail(m->ctx, TT_ERR_ARG, "tt_model_lora_save: the model has no adapters"); }
    return tti_tried(m->ctx, "tt_model_lora_save", status);
}

/* d->target_modules points into `targets`, of `list`'s length, which the caller frees, and into the JSON. */
static tt_status tti_lora_read_targets(const tti_object *r, const tt_json *list, tt_lora_desc *d,
                                       const char ***targets) {
    static const char *const field = "target_modules";
    const tt_json *node;
    if (!list) { return tti_refuse(r->ctx, r->file, "target_modules is missing"); }
    if (list->type == TT_JSON_STRING && strcmp(list->string, "all-linear") == 0) { return TT_OK; }
    if (list->type != TT_JSON_ARRAY || list->length < 1 || list->length > 65536) {
        return tti_field_fail(r, field, list, "a list of names or \"all-linear\"");
    }
    *targets = (const char **)tt_alloc(r->ctx, list->length, sizeof **targets);
    if (!*targets) { return TT_ERR_MEM; }
    for (node = list->child; node; node = node->next) {
        if (node->type != TT_JSON_STRING) { return tti_field_fail(r, field, node, "a list of names"); }
        (*targets)[d->n_target_modules++] = node->string;
    }
    d->target_modules = *targets;
    return TT_OK;
}

/* Adds adapters as adapter_config.json says, still without data; the base is not frozen yet. */
static tt_status tti_lora_configure(tt_model *m, const tti_folder *f) {
    const char **targets = NULL;
    tti_object r = TT_INIT;
    tti_lora_file k;
    tt_status status;
    memset(&k, 0, sizeof k);
    k.d.rank = 8;
    k.d.alpha = 8;
    TTI_TRY(tti_object_open(&r, m->ctx, f->path.data, f->text.data, f->text.size));
    TTI_TRY(tti_fields_read(&r, tti_lora_fields, m->config.gpt2 ? TTI_IN_GPT2 : TTI_IN_LLAMA, &k));
    if (k.d.rank < 1) {
        status = tti_field_fail(&r, "r", tt_json_get(r.root, "r"), "a rank >= 1");
        goto done;
    }
    TTI_TRY(tti_lora_read_targets(&r, k.target_modules.node, &k.d, &targets));
    status = tti_lora_build(m, &k.d, 1) == TT_OK ? TT_OK : tti_file_fail(m->ctx, f->path.data, "");
done:
    tt_free(m->ctx, targets, targets ? k.target_modules.node->length : 0, sizeof *targets);
    tt_json_free(m->ctx, r.document);
    return status;
}

/* The data of all adapters, once names and shapes of the file are known to be theirs. */
static tt_status tti_lora_fill(tt_model *m, tt_safetensors *file) {
    int n = m->n_params - m->n_base;
    tt_text names = TT_INIT;
    tt_named *list;
    tt_status status;
    names.ctx = m->ctx;
    list = tti_named_params(m, m->n_base, m->n_params, TTI_PEFT_PREFIX, &names);
    TTI_TRY(list ? tti_list_check(file, list, n, "adapter_config.json wants") : TT_ERR_MEM);
    TTI_TRY(tti_list_fill(file, list, n));
done:
    tt_free(m->ctx, list, (size_t)n, sizeof *list);
    tt_text_free(&names);
    return status;
}

/* A failure takes the adapters out again. */
static tt_status tti_model_lora_load(tt_model *m, const char *dir) {
    tt_safetensors *file = NULL;
    tti_folder d;
    tt_status status;
    int added = 0;
    if (m->lora.rank) {
        return tt_fail(m->ctx, TT_ERR_ARG, "tt_model_lora_load: the model has adapters, of rank %d",
                       m->lora.rank);
    }
    tti_folder_open(&d, m->ctx, dir);
    TTI_TRY(tti_folder_read(&d, "adapter_config.json"));
    TTI_TRY(tti_lora_configure(m, &d));
    added = 1;
    TTI_TRY(tti_folder_name(&d, "adapter_model.safetensors"));
    file = tt_safetensors_open(m->ctx, d.path.data);
    TTI_TRY(file ? TT_OK : tt_error_status(m->ctx));
    TTI_TRY(tti_lora_fill(m, file));
    tti_lora_freeze(m);
done:
    if (added && status != TT_OK) { tti_lora_detach(m); }
    tt_safetensors_close(file);
    tti_folder_close(&d);
    return status;
}

TT_API tt_status tt_model_lora_load(tt_model *m, const char *dir) {
    return tti_tried(m->ctx, "tt_model_lora_load", tti_model_lora_load(m, dir));
}

/* ==== 9. generate ===========================================================================
 * First the rules: how one row of logits and one random number give a token. Then the engine that asks the
 * model for such rows. A sequence is in a slot of the cache while it grows. What all prompts begin with runs
 * first, once for all slots. Each turn of tt_generate has three parts: fill gives empty slots to waiting
 * sequences, whose prompts (what is left of them, but for the last token) run through the model as one packed
 * batch, once per prompt; decode runs the last token of every sequence as a batch; then each row of logits
 * gives a token, which may end its sequence.
 *
 * Nothing of this order can be seen in the results: a row's arithmetic does not depend on the rows beside it,
 * and the random number of a token is a function of (seed, request id, sample, position). */

/* ---- [tt:generate.ranking] tokens in order, as far as one asks ----
 * ids of n tokens. Its last `sorted` places hold the tokens of the largest scores, the largest last; before
 * them stands a max-heap of the others. Of equal scores the lowest id is the larger. To find the k most
 * likely of V tokens costs V + k log V, and nobody knows k before: top-p and min-p look at one token after
 * the other. */

typedef struct tti_ranking {
    const float *scores;
    int32_t *ids;
    int n, sorted;
} tti_ranking;

static int tti_ranks_before(const float *scores, int32_t a, int32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
}

static void tti_heap_sink(const float *scores, int32_t *heap, int n, int i) {
    for (;;) {
        int child = 2 * i + 1;
        int32_t moved = heap[i];
        if (child >= n) { return; }
        if (child + 1 < n && tti_ranks_before(scores, heap[child + 1], heap[child])) { child++; }
        if (!tti_ranks_before(scores, heap[child], moved)) { return; }
        heap[i] = heap[child];
        heap[child] = moved;
        i = child;
    }
}

/* ids: room for n. */
static void tti_ranking_begin(tti_ranking *r, const float *scores, int32_t *ids, int n) {
    int i;
    r->scores = scores;
    r->ids = ids;
    r->n = n;
    r->sorted = 0;
    for (i = 0; i < n; i++) { ids[i] = (int32_t)i; }
    for (i = n / 2 - 1; i >= 0; i--) { tti_heap_sink(scores, ids, n, i); }
}

/* The id in place `rank`, 0 = the largest; rank is at most `sorted`. */
static int32_t tti_ranked(tti_ranking *r, int rank) {
    int32_t *place = &r->ids[r->n - 1 - rank], top = r->ids[0];
    if (rank < r->sorted) { return *place; }
    r->ids[0] = *place;
    *place = top;
    r->sorted++;
    tti_heap_sink(r->scores, r->ids, r->n - r->sorted, 0);
    return top;
}

/* The sum of w in the first n places, which are sorted or all that there are. */
static double tti_ranking_mass(const tti_ranking *r, const float *w, int n) {
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) { sum += (double)w[r->ids[r->n - 1 - i]]; }
    return sum;
}

/* ---- [tt:generate.candidates] top-k, top-p, min-p: how many tokens of the ranking are left ----
 * w[id] is e to the power of the score, less the largest score. The rules, their order and what they round
 * are those of transformers' logits warpers: each looks at what the one before has left, renormalised, and
 * compares floats. (Which of equal tokens top-p drops is not defined there.) Each returns how many of the n
 * first it leaves. */

/* The k most likely, and what equals the last of them. */
static int tti_top_k(tti_ranking *r, int k) {
    float least = -HUGE_VALF;
    int i;
    for (i = 0; i < r->n && (i < k || r->scores[r->ids[0]] == least); i++) {
        least = r->scores[tti_ranked(r, i)];
    }
    return i;
}

/* A float of few decimals as the number that was written: 1 - 0.8f is not 1 - 0.8, by more than rounding. */
static double tti_decimal(float x) {
    double decimal = floor((double)x * 1e7 + 0.5) / 1e7;
    return (float)decimal == x ? decimal : (double)x;
}

/* Drops from the end what together has at most 1 - top_p, but never the first; sum is the mass of all n. */
static int tti_top_p(tti_ranking *r, const float *w, int n, double sum, float top_p) {
    float most = (float)(1 - tti_decimal(top_p));
    double rest = 0;
    int i;
    for (i = 0; i < n; i++) { rest += (double)(float)((double)w[r->ids[r->n - 1 - i]] / sum); }
    for (i = 0; i < n && (i == 0 || (float)rest > most); i++) {
        rest -= (double)(float)((double)w[tti_ranked(r, i)] / sum);
    }
    return i;
}

/* Drops what is less likely than min_p times the first. */
static int tti_min_p(tti_ranking *r, const float *w, int n, double sum, float min_p) {
    float least = min_p * (float)((double)w[tti_ranked(r, 0)] / sum);
    int i = 1;
    while (i < n && (float)((double)w[tti_ranked(r, i)] / sum) >= least) { i++; }
    return i;
}

/* The ranking has just begun. */
static int tti_candidates(tti_ranking *r, const float *w, const tt_sampling *s) {
    int n = r->n;
    double sum;
    if (s->top_k > 0 && s->top_k < n) { n = tti_top_k(r, s->top_k); }
    sum = tti_ranking_mass(r, w, n);
    if (s->top_p < 1.0f) {
        n = tti_top_p(r, w, n, sum, s->top_p);
        sum = tti_ranking_mass(r, w, n);
    }
    return s->min_p > 0 ? tti_min_p(r, w, n, sum, s->min_p) : n;
}

/* ---- [tt:generate.choose] one row of logits to one token ----
 * With z the logits after the repetition penalty, w_i = exp((z_i - max z) / temperature), and candidates C in
 * their order (all tokens by id, or the ranking's first ones), the token is the first c in C for which the
 * sum of w up to c is more than u times the sum of w over C. */

/* What tti_choose writes to: vocab values each. */
typedef struct tti_choice {
    float *w, *scores;      /* scores may be the logits */
    int32_t *ids;
} tti_choice;

/* Hugging Face's repetition penalty, on each token of the history once: it starts from raw, not from what an
 * earlier occurrence has left. Source: CTRL, arXiv 1909.05858, sec. 4.1. */
static void tti_penalise(float *logits, const float *raw, const int32_t *history, int n, float penalty) {
    int i;
    for (i = 0; i < n; i++) {
        float z = raw[history[i]] > 0 ? raw[history[i]] / penalty : raw[history[i]] * penalty;
        logits[history[i]] = z > FLT_MAX ? FLT_MAX : z < -FLT_MAX ? -FLT_MAX : z;
    }
}

/* One of n candidates; order NULL: the tokens 0 to n - 1. A token without weight is never drawn, whatever
 * rounding does to the sums. */
static int32_t tti_draw(const float *w, const tti_ranking *order, int n, double u) {
    const int32_t *first = order ? order->ids + order->n - 1 : NULL;
    double total = 0, mass = 0;
    int32_t chosen = 0;
    int i;
    for (i = 0; i < n; i++) { total += (double)w[first ? first[-i] : i]; }
    for (i = 0; i < n; i++) {
        int32_t id = first ? first[-i] : (int32_t)i;
        mass += (double)w[id];
        if (w[id] > 0) { chosen = id; }
        if (mass > u * total) { break; }
    }
    return chosen;
}

static int tti_is_restricted(const tt_sampling *s, int vocab) {
    return (s->top_k > 0 && s->top_k < vocab) || s->top_p < 1.0f || s->min_p > 0;
}

/* u in [0,1). Greedy: the largest logit, of equals the lowest id. *n_kept: how many tokens it was drawn from;
 * if not all, they are the last ids of the scratch. */
static int32_t tti_choose(tt_context *ctx, const float *logits, int vocab, const tt_sampling *s, double u,
                          const tti_choice *scratch, int *n_kept) {
    float largest = -FLT_MAX, inv_temperature = 1.0f / s->temperature, *w = scratch->w;
    int32_t best = 0;
    tti_ranking ranking;
    int i;
    for (i = 0; i < vocab; i++) {
        if (!(logits[i] > largest)) { continue; }
        largest = logits[i];
        best = (int32_t)i;
    }
    *n_kept = vocab;
    if (s->greedy) { return best; }
    for (i = 0; i < vocab; i++) { w[i] = (logits[i] - largest) * inv_temperature; }
    tti_row_exp(ctx, w, vocab);
    if (!tti_is_restricted(s, vocab)) { return tti_draw(w, NULL, vocab, u); }
    for (i = 0; i < vocab; i++) { scratch->scores[i] = logits[i] / s->temperature; }
    tti_ranking_begin(&ranking, scratch->scores, scratch->ids, vocab);
    *n_kept = tti_candidates(&ranking, w, s);
    return tti_draw(w, &ranking, *n_kept, u);
}

/* ---- [tt:generate.engine] the engine's data ----
 * Items are the completions asked for, request by request, sample by sample; next_item is the first that
 * waits. A slot holds one item at a time. A batch of the model is described by offsets, tokens and slot_ids:
 * sequence i of the batch is tokens[offsets[i] .. offsets[i+1]) and continues slot slot_ids[i]. */

typedef struct tti_sequence {
    int item;                   /* index in out->items, -1 = the slot is empty          */
    int prompt_length, length;  /* length: prompt and response so far                   */
    int32_t *tokens;            /* [capacity]; the cache holds all of them but the last, and those that an
                                   environment has just written */
    float *logprobs, *sampled;  /* [max_new_tokens] of the response                     */
    int32_t *row;               /* [vocab] among which the newest token was drawn, n_row of them; 0 = all */
    int n_row;
    int32_t *kept_at;           /* [max_new_tokens + 1] of the response, into           */
    tt_ids kept;
} tti_sequence;
typedef struct tti_engine {
    tt_context *ctx;
    tt_model *model;
    const tt_request *requests;
    int n_requests;
    tt_sampling sampling;                   /* resolved                                           */
    tt_completions *out;
    tt_kv_cache *cache;
    tti_sequence *slots;                    /* [n_slots]                                          */
    int32_t *texts;                         /* [n_slots, capacity]: where sequences have tokens,  */
    float *logprobs;                        /* [n_slots, 2 max_new_tokens]: and log-probs         */
    int32_t *kept_at, *rows;                /* with keep_sampling_mask [n_slots, max_new_tokens + 1],
                                               [n_slots, vocab] */
    int n_slots, capacity, next_item;
    int prefix_length;                      /* tokens with which all prompts begin: every slot holds them */
    int32_t *offsets, *tokens, *slot_ids;   /* [n_slots + 1], [n_slots * capacity], [n_slots]     */
    int owns_panels;
    tti_mark begin, floors[2];              /* where the device's arena was; floors of host and device */
    int n_last_step;                        /* sequences of the step before; 0 = prompts ran since */
} tti_engine;

static const tt_completion *tti_sequence_completion(const tti_engine *e, const tti_sequence *q) {
    return &e->out->items[q->item];
}

static int tti_request_copies(const tt_request *r) { return r->n ? r->n : 1; }

/* ---- [tt:generate.check] settings and requests ---- */

/* Fills in defaults. */
static tt_status tti_sampling_check(tt_context *ctx, tt_sampling *s) {
    static const char *const who = "tt_generate";
    tt_status status = TT_OK;
    if (s->max_new_tokens == 0) { s->max_new_tokens = 128; }
    if (s->temperature == 0) { s->temperature = 1; }
    if (s->top_p == 0) { s->top_p = 1; }
    if (s->repetition_penalty == 0) { s->repetition_penalty = 1; }
    if (s->max_batch == 0) { s->max_batch = 128; }
    TTI_EXPECT(s->max_new_tokens >= 1, "max_new_tokens is %d, expected >= 1", s->max_new_tokens);
    TTI_EXPECT(tti_is_temperature(s->temperature), "temperature is %g, expected " TTI_TEMPERATURES,
               (double)s->temperature);
    TTI_EXPECT(s->top_p > 0 && s->top_p <= 1, "top_p is %g, expected in (0, 1]", (double)s->top_p);
    TTI_EXPECT(s->min_p >= 0 && s->min_p <= 1, "min_p is %g, expected in [0, 1]", (double)s->min_p);
    TTI_EXPECT(s->top_k >= 0, "top_k is %d, expected >= 0", s->top_k);
    TTI_EXPECT(s->repetition_penalty > 0 && isfinite(s->repetition_penalty),
               "repetition_penalty is %g, expected a finite number > 0", (double)s->repetition_penalty);
    TTI_EXPECT(s->max_batch >= 1, "max_batch is %d, expected >= 1", s->max_batch);
done:
    return status;
}

static tt_status tti_request_check(const tti_engine *e, int r) {
    static const char *const who = "tt_generate";
    tt_context *ctx = e->ctx;
    const tt_request *q = &e->requests[r];
    int vocab = e->model->config.vocab_size, limit = e->model->config.max_position_embeddings;
    int n = q->prompt_length, most = e->sampling.max_new_tokens, k;
    tt_status status = TT_OK;
    TTI_EXPECT(q->n >= 0, "requests[%d].n is %d, expected >= 0", r, q->n);
    TTI_EXPECT(n >= 1, "requests[%d].prompt_length is %d, expected >= 1", r, n);
    TTI_EXPECT(n <= limit && most <= limit - n, "requests[%d] has %d prompt tokens and max_new_tokens is %d, "
               "together above max_position_embeddings %d", r, n, most, limit);
    for (k = 0; k < n; k++) {
        TTI_EXPECT(q->prompt[k] >= 0 && q->prompt[k] < vocab, "requests[%d].prompt[%d] is %d, expected 0..%d "
                   "(vocab_size of the model)", r, k, (int)q->prompt[k], vocab - 1);
    }
done:
    return status;
}

/* With how many tokens all prompts begin, the last of each aside; 0 where it is too few to pay. */
#define TTI_PREFIX_LEAST 32
static int tti_engine_prefix_length(const tti_engine *e) {
    const tt_request *first = e->requests, *q;
    int common = e->n_requests > 1 ? first->prompt_length - 1 : 0, k;
    for (q = first + 1; q < first + e->n_requests; q++) {
        if (common > q->prompt_length - 1) { common = q->prompt_length - 1; }
        for (k = 0; k < common && q->prompt[k] == first->prompt[k]; k++) { }
        common = k;
    }
    return common < TTI_PREFIX_LEAST ? 0 : common;
}

/* The items in order, and the longest sequence. */
static tt_status tti_engine_items(tti_engine *e) {
    static const char *const who = "tt_generate";
    tt_context *ctx = e->ctx;
    tt_completion *item;
    tt_status status = TT_OK;
    int r, k, total = 0;
    for (r = 0; r < e->n_requests; r++) {
        const tt_request *q = &e->requests[r];
        TTI_TRY(tti_request_check(e, r));
        TTI_EXPECT(total <= INT_MAX - tti_request_copies(q), "requests[%d].n is %d, too many", r, q->n);
        total += tti_request_copies(q);
        k = q->prompt_length + e->sampling.max_new_tokens;
        if (k > e->capacity) { e->capacity = k; }
    }
    item = e->out->items = (tt_completion *)tt_alloc(ctx, (size_t)total, sizeof *item);
    if (!item) { return TT_ERR_MEM; }
    e->out->n = total;
    for (r = 0; r < e->n_requests; r++) {
        for (k = 0; k < tti_request_copies(&e->requests[r]); k++, item++) {
            item->request = r;
            item->sample = k;
        }
    }
    e->n_slots = total < e->sampling.max_batch ? total : e->sampling.max_batch;
    e->prefix_length = tti_engine_prefix_length(e);
done:
    return status;
}

/* ---- [tt:generate.panels] weights in the layout that the kernels like best ----
 * A product with few rows reads its weights once for each call and spends much of its time on their order.
 * Where enough turns follow, they are laid out once as panels, see gemm_panels; not if that took more memory
 * than the weights have. */

#define TTI_PANELS_LEAST_TURNS 8
#define TTI_PANELS_MOST_BYTES ((size_t)1 << 31)

/* The panels of one weight, if they fit into what is left and are not much larger than it; else its products
 * read it as it lies. */
static tt_status tti_panels_make(tt_tensor *w, int transposed, size_t *bytes_left) {
    tt_context *ctx = w->ctx;
    tt_gemm_args g = TT_INIT;
    size_t bytes;
    if (w->panels) { return TT_OK; }
    g.n = w->shape[transposed ? 0 : 1];
    g.k = w->shape[transposed ? 1 : 0];
    g.ldb = w->shape[1];
    g.transpose_b = transposed;
    g.b = TT_F(w);
    g.half_b = w->dtype == TT_BF16 ? (const uint16_t *)w->data : NULL;
    bytes = ctx->backend->gemm_panels(ctx, &g, NULL);
    if (bytes == 0 || bytes > *bytes_left || bytes > tti_tensor_bytes(w) * 5 / 4 + 65536) { return TT_OK; }
    w->panels = tti_arena_alloc(ctx, &ctx->device, bytes);
    if (!w->panels) { return TT_ERR_MEM; }
    ctx->backend->gemm_panels(ctx, &g, w->panels);
    w->panels_transposed = transposed;
    *bytes_left -= bytes;
    return TT_OK;
}

/* A model that has panels is already in a tt_generate, whose on_token called this one. */
static tt_status tti_engine_panels(tti_engine *e) {
    tt_model *m = e->model;
    size_t left = TTI_PANELS_MOST_BYTES;
    tt_status status = TT_OK;
    int i;
    if (!e->ctx->backend->gemm_panels || e->sampling.max_new_tokens < TTI_PANELS_LEAST_TURNS ||
        m->head->panels) {
        return TT_OK;
    }
    e->owns_panels = 1;
    for (i = 0; i < tti_model_n_matrices(m); i++) {
        tt_tensor *w = tti_model_matrix(m, i)->w;
        if (w && w->dtype != TT_F16) { TTI_TRY(tti_panels_make(w, !m->config.gpt2, &left)); }
    }
    TTI_TRY(tti_panels_make(m->head, 1, &left));
done:
    return status;
}

static void tti_engine_panels_forget(tti_engine *e) {
    int i;
    for (i = 0; e->owns_panels && i < e->model->n_params; i++) { e->model->params[i]->panels = NULL; }
}

/* ---- [tt:generate.open] the engine's memory ----
 * Panels and cache, which are nearly all of it, lie in the arena of the step: the same memory serves a step's
 * rollouts and then its update. */

/* The caller closes the engine whatever this returns: what was allocated until then is freed there. */
static tt_status tti_engine_open(tti_engine *e) {
    tt_context *ctx = e->ctx;
    size_t n_slots = (size_t)e->n_slots, capacity = (size_t)e->capacity;
    size_t most = (size_t)e->sampling.max_new_tokens, vocab = (size_t)e->model->config.vocab_size, i;
    int block = ctx->backend->key_block;
    tt_kv_cache sizes = TT_INIT;
    tt_status status = tti_engine_panels(e);
    if (status != TT_OK) { return status; }
    sizes.n_slots = e->n_slots;
    sizes.capacity = e->capacity;
    sizes.shared = block ? e->prefix_length / block * block : 0;
    sizes.of_step = 1;
    e->cache = tti_model_cache(e->model, &sizes);      /* also checks n_slots * capacity */
    if (!e->cache) { return tt_error_status(ctx); }
    ctx->host.floor = tti_arena_mark(&ctx->host);
    ctx->device.floor = tti_arena_mark(&ctx->device);
    e->slots = (tti_sequence *)tt_alloc(ctx, n_slots, sizeof *e->slots);
    e->texts = (int32_t *)tt_alloc(ctx, n_slots * capacity, sizeof(int32_t));
    e->logprobs = (float *)tt_alloc(ctx, n_slots * most, 2 * sizeof(float));
    e->offsets = (int32_t *)tt_alloc(ctx, n_slots + 1, sizeof(int32_t));
    e->slot_ids = (int32_t *)tt_alloc(ctx, n_slots, sizeof(int32_t));
    e->tokens = (int32_t *)tt_alloc(ctx, n_slots * capacity, sizeof(int32_t));
    if (!e->slots || !e->texts || !e->logprobs) { return TT_ERR_MEM; }
    if (!e->offsets || !e->slot_ids || !e->tokens) { return TT_ERR_MEM; }
    if (e->sampling.keep_sampling_mask) {
        e->kept_at = (int32_t *)tt_alloc(ctx, n_slots * (most + 1), sizeof(int32_t));
        e->rows = (int32_t *)tt_alloc(ctx, n_slots * vocab, sizeof(int32_t));
        if (!e->kept_at || !e->rows) { return TT_ERR_MEM; }
    }
    for (i = 0; i < n_slots; i++) {
        tti_sequence *q = &e->slots[i];
        q->item = -1;
        q->tokens = e->texts + i * capacity;
        q->logprobs = e->logprobs + i * 2 * most;
        q->sampled = q->logprobs + most;
        q->row = e->rows ? e->rows + i * vocab : NULL;
        q->kept_at = e->kept_at ? e->kept_at + i * (most + 1) : NULL;
        q->kept.ctx = ctx;
    }
    return TT_OK;
}

/* Also of an engine that was opened halfway. The arena goes back to where tt_generate found it. */
static void tti_engine_close(tti_engine *e) {
    tt_context *ctx = e->ctx;
    size_t n_slots = (size_t)e->n_slots, capacity = (size_t)e->capacity;
    size_t most = (size_t)e->sampling.max_new_tokens, vocab = (size_t)e->model->config.vocab_size, i;
    for (i = 0; e->rows && i < n_slots; i++) { tt_ids_free(&e->slots[i].kept); }
    tt_free(ctx, e->kept_at, n_slots * (most + 1), sizeof(int32_t));
    tt_free(ctx, e->rows, n_slots * vocab, sizeof(int32_t));
    tt_free(ctx, e->slots, n_slots, sizeof *e->slots);
    tt_free(ctx, e->texts, n_slots * capacity, sizeof(int32_t));
    tt_free(ctx, e->logprobs, n_slots * most, 2 * sizeof(float));
    tt_free(ctx, e->offsets, n_slots + 1, sizeof(int32_t));
    tt_free(ctx, e->slot_ids, n_slots, sizeof(int32_t));
    tt_free(ctx, e->tokens, n_slots * capacity, sizeof(int32_t));
    tt_kv_cache_destroy(e->cache);
    tti_engine_panels_forget(e);
    ctx->host.floor = e->floors[0];
    ctx->device.floor = e->floors[1];
    tti_arena_release(&ctx->device, e->begin);
}

/* ---- [tt:generate.fill] waiting sequences get empty slots ---- */

/* Sequence i of the next batch: n tokens that continue a slot. */
static void tti_batch_put(tti_engine *e, int i, int slot, const int32_t *tokens, int n) {
    memcpy(e->tokens + e->offsets[i], tokens, (size_t)n * sizeof(int32_t));
    e->offsets[i + 1] = e->offsets[i] + (int32_t)n;
    e->slot_ids[i] = (int32_t)slot;
}

/* Runs the n sequences of the batch through the model: hidden states [all their tokens, C]. */
static tt_tensor *tti_engine_forward(tti_engine *e, int n) {
    tt_batch_desc desc = TT_INIT;
    desc.n_sequences = n;
    desc.offsets = e->offsets;
    desc.tokens = e->tokens;
    desc.cache = e->cache;
    desc.cache_slots = e->slot_ids;
    return tt_model_forward(e->model, tt_batch_create(e->ctx, &desc));
}

/* The tokens with which all prompts begin, such as a teacher's worked examples, run once for all slots. */
static tt_status tti_engine_prefix(tti_engine *e) {
    tt_status status = TT_OK;
    int i;
    if (e->prefix_length == 0) { return TT_OK; }
    tti_batch_put(e, 0, 0, e->requests[0].prompt, e->prefix_length);
    if (!tti_engine_forward(e, 1)) { return tt_error_status(e->ctx); }
    for (i = 1; i < e->n_slots && status == TT_OK; i++) {
        status = tt_kv_cache_share(e->cache, 0, i, e->prefix_length);
    }
    return status;
}

/* Another slot with the same request and at least `cached` positions in the cache; -1 if none. */
static int tti_engine_donor(const tti_engine *e, int slot, int cached) {
    int request = tti_sequence_completion(e, &e->slots[slot])->request, i;
    for (i = 0; i < e->n_slots; i++) {
        const tti_sequence *q = &e->slots[i];
        if (i == slot || q->item < 0 || tti_sequence_completion(e, q)->request != request) { continue; }
        if (tt_kv_cache_length(e->cache, i) >= cached) { return i; }
    }
    return -1;
}

/* The next item goes to the slot: its prompt is there, and the cache holds the common prefix alone. */
static void tti_sequence_begin(tti_engine *e, int slot) {
    tti_sequence *q = &e->slots[slot];
    const tt_request *r;
    q->item = e->next_item++;
    r = &e->requests[tti_sequence_completion(e, q)->request];
    q->length = q->prompt_length = r->prompt_length;
    memcpy(q->tokens, r->prompt, (size_t)r->prompt_length * sizeof(int32_t));
    tt_kv_cache_truncate(e->cache, slot, e->prefix_length);
}

/* The first of a request runs its prompt, all but the last token; the others copy its cache. A sequence that
 * goes on behind an environment's turn runs that, all but the last token. */
static tt_status tti_engine_fill(tti_engine *e) {
    int i, n = 0, first = e->next_item, begin = e->prefix_length;
    for (i = 0; i < e->n_slots; i++) {
        tti_sequence *q = &e->slots[i];
        int held = tt_kv_cache_length(e->cache, i);
        if (q->item >= 0 && held < q->length - 1) {
            tti_batch_put(e, n++, i, q->tokens + held, q->length - 1 - held);
        }
        if (q->item >= 0 || e->next_item == e->out->n) { continue; }
        tti_sequence_begin(e, i);
        if (q->length - 1 == begin || tti_engine_donor(e, i, 0) >= 0) { continue; }
        tti_batch_put(e, n++, i, q->tokens + begin, q->length - 1 - begin);
    }
    if (n > 0 && !tti_engine_forward(e, n)) { return tt_error_status(e->ctx); }
    if (n > 0) { e->n_last_step = 0; }
    for (i = 0; i < e->n_slots; i++) {
        tti_sequence *q = &e->slots[i];
        int donor;
        if (q->item < first || tt_kv_cache_length(e->cache, i) == q->length - 1) { continue; }
        donor = tti_engine_donor(e, i, q->length - 1);
        if (tt_kv_cache_share(e->cache, donor, i, q->length - 1) != TT_OK) { return tt_error_status(e->ctx); }
    }
    return TT_OK;
}

/* ---- [tt:generate.sample] a token for each row of logits ---- */

/* The slot's next random number. */
static double tti_sequence_random(const tti_engine *e, const tti_sequence *q) {
    const tt_completion *c = tti_sequence_completion(e, q);
    uint64_t name[2];
    name[0] = e->requests[c->request].id;
    name[1] = (uint64_t)c->sample;
    return tti_unit(tt_random(e->sampling.seed, tt_hash(name, sizeof name, 0), (uint64_t)q->length));
}

static void tti_sequence_append(tti_sequence *q, int32_t token, float logprob, float sampled) {
    int t = q->length - q->prompt_length;
    q->tokens[q->length++] = token;
    q->logprobs[t] = logprob;
    q->sampled[t] = sampled;
}

/* The row from which the token was drawn: penalised, and all but the n_kept last ids of the scratch without
 * weight. Of it the same scan as that of training gives the log-prob of what was sampled from. */
static float tti_sampled_logprob(const tti_engine *e, tti_sequence *q, const float *logits, int32_t token,
                                 int n_kept, const tti_choice *scratch) {
    const tt_sampling *s = &e->sampling;
    int vocab = e->model->config.vocab_size, i;
    float *row = scratch->w, logprob;
    memcpy(row, logits, (size_t)vocab * sizeof(float));
    if (s->repetition_penalty != 1.0f) {
        tti_penalise(row, logits, q->tokens, q->length, s->repetition_penalty);
    }
    for (i = 0; i < vocab - n_kept; i++) { row[scratch->ids[i]] = TTI_DROPPED; }
    tti_row_logprob(e->ctx, row, vocab, token, 1.0f / s->temperature, &logprob, NULL);
    for (i = 0; q->row && n_kept < vocab && i < vocab; i++) {
        if (row[i] != TTI_DROPPED) { q->row[q->n_row++] = (int32_t)i; }
    }
    return logprob;
}

/* One log-prob is that of the raw logits under the temperature: what training computes for the same token. */
static void tti_sequence_sample(const tti_engine *e, tti_sequence *q, const float *logits,
                                const tti_choice *scratch) {
    const tt_sampling *s = &e->sampling;
    int vocab = e->model->config.vocab_size;
    const float *row = logits;
    int32_t token;
    float logprob, sampled;
    int n_kept;
    if (s->repetition_penalty != 1.0f) {
        memcpy(scratch->scores, logits, (size_t)vocab * sizeof(float));
        tti_penalise(scratch->scores, logits, q->tokens, q->length, s->repetition_penalty);
        row = scratch->scores;
    }
    token = tti_choose(e->ctx, row, vocab, s, tti_sequence_random(e, q), scratch, &n_kept);
    tti_row_logprob(e->ctx, logits, vocab, token, 1.0f / s->temperature, &logprob, NULL);
    sampled = s->greedy ? 0 : logprob;
    q->n_row = 0;
    if (!s->greedy && (n_kept < vocab || row != logits)) {
        sampled = tti_sampled_logprob(e, q, logits, token, n_kept, scratch);
    }
    tti_sequence_append(q, token, logprob, sampled);
}

/* A part of the threads' work is TTI_ROWS_A_PART rows; each thread has scratch of its own. */
#define TTI_ROWS_A_PART 4
typedef struct tti_sample_job {
    const tti_engine *e;
    int n;
    const float *rows;
    tti_choice scratch;
} tti_sample_job;

static void tti_sample_part(void *user, int part, int worker) {
    const tti_sample_job *job = (const tti_sample_job *)user;
    const tti_engine *e = job->e;
    size_t vocab = (size_t)e->model->config.vocab_size, mine = (size_t)worker * vocab;
    int i = part * TTI_ROWS_A_PART, end = i + TTI_ROWS_A_PART < job->n ? i + TTI_ROWS_A_PART : job->n;
    tti_choice scratch;
    scratch.w = job->scratch.w + mine;
    scratch.scores = job->scratch.scores + mine;
    scratch.ids = job->scratch.ids + mine;
    for (; i < end; i++) {
        tti_sequence_sample(e, &e->slots[e->slot_ids[i]], job->rows + (size_t)i * vocab, &scratch);
    }
}

/* Rows are cut among the threads, each with scratch memory for one of them; a row's token depends on its
 * logits and its own random number alone. */
static tt_status tti_sample_on_host(tti_engine *e, const tt_tensor *logits, int n) {
    tt_context *ctx = e->ctx;
    size_t count = (size_t)ctx->n_threads * (size_t)e->model->config.vocab_size;
    float *rows = TT_F(logits);
    tti_sample_job job;
    if (ctx->backend != tt_cpu_backend()) {
        rows = (float *)tti_arena_alloc(ctx, &ctx->host, logits->size * sizeof(float));
        if (!rows || tt_tensor_get(logits, rows) != TT_OK) { return tt_error_status(ctx); }
    }
    job.e = e;
    job.n = n;
    job.rows = rows;
    job.scratch.w = (float *)tti_arena_alloc(ctx, &ctx->host, count * sizeof(float));
    job.scratch.scores = (float *)tti_arena_alloc(ctx, &ctx->host, count * sizeof(float));
    job.scratch.ids = (int32_t *)tti_arena_alloc(ctx, &ctx->host, count * sizeof(int32_t));
    if (!job.scratch.w || !job.scratch.scores || !job.scratch.ids) { return TT_ERR_MEM; }
    return tti_parallel(ctx, tti_sample_part, &job, (n + TTI_ROWS_A_PART - 1) / TTI_ROWS_A_PART);
}

/* Where the backend can draw, n tokens and log-probs come down instead of n x vocab logits. */
static int tti_samples_on_device(const tti_engine *e) {
    const tt_sampling *s = &e->sampling;
    return e->ctx->backend->sample && s->top_k <= 0 && s->top_p >= 1.0f && s->min_p <= 0 &&
           s->repetition_penalty == 1.0f;
}

/* drawn: on the backend, n tokens and behind them n log-probs. */
static tt_status tti_sample_on_device(tti_engine *e, const tt_tensor *logits, int n, int32_t **drawn) {
    tt_context *ctx = e->ctx;
    size_t count = (size_t)n;
    double *u = (double *)tti_arena_alloc(ctx, &ctx->host, count * sizeof(double));
    double *device_u = (double *)tti_arena_alloc(ctx, &ctx->device, count * sizeof(double));
    tt_sample_args a = TT_INIT;
    tt_status status;
    int i;
    *drawn = (int32_t *)tti_arena_alloc(ctx, &ctx->device, count * (sizeof(int32_t) + sizeof(float)));
    if (!u || !device_u || !*drawn) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { u[i] = tti_sequence_random(e, &e->slots[e->slot_ids[i]]); }
    a.n = n;
    a.vocab = e->model->config.vocab_size;
    a.greedy = e->sampling.greedy;
    a.inv_temperature = 1.0f / e->sampling.temperature;
    a.logits = TT_F(logits);
    a.u = device_u;
    a.tokens = *drawn;
    a.logprobs = (float *)(*drawn + n);
    status = ctx->backend->upload(ctx, device_u, u, count * sizeof(double));
    return status == TT_OK ? ctx->backend->sample(ctx, &a) : status;
}

static tt_status tti_sample_download(tti_engine *e, const int32_t *drawn, int n) {
    tt_context *ctx = e->ctx;
    size_t bytes = (size_t)n * (sizeof(int32_t) + sizeof(float));
    int32_t *tokens = (int32_t *)tti_arena_alloc(ctx, &ctx->host, bytes);
    tt_status status = tokens ? ctx->backend->download(ctx, tokens, drawn, bytes) : TT_ERR_MEM;
    int i;
    for (i = 0; status == TT_OK && i < n; i++) {
        float logprob;
        memcpy(&logprob, tokens + n + i, sizeof logprob);
        tti_sequence_append(&e->slots[e->slot_ids[i]], tokens[i], logprob, e->sampling.greedy ? 0 : logprob);
    }
    return status;
}

/* ---- [tt:generate.turn] one token for every sequence ---- */

/* The last token of n sequences through the model, and where the backend draws, what it draws. */
static tt_status tti_decode_launch(tti_engine *e, int n, tt_tensor **logits, int32_t **drawn) {
    *drawn = NULL;
    *logits = tt_model_logits(e->model, tti_engine_forward(e, n));
    if (!*logits) { return tt_error_status(e->ctx); }
    return tti_samples_on_device(e) ? tti_sample_on_device(e, *logits, n, drawn) : TT_OK;
}

/* The same, handed over as one if the step is like the one before, which has then made room for all that it
 * needs. Where the backend could not do so, the cache goes back by one token and the step is launched once
 * more. */
static tt_status tti_decode_run(tti_engine *e, int n, tt_tensor **logits, int32_t **drawn) {
    const tt_backend *backend = e->ctx->backend;
    int held = backend->step_begin && n == e->n_last_step && backend->step_begin(e->ctx), i;
    tt_status status = tti_decode_launch(e, n, logits, drawn);
    e->n_last_step = n;
    if (!held || backend->step_end(e->ctx) || status != TT_OK) { return status; }
    e->ctx->steps_lost++;
    for (i = 0; i < n; i++) {
        int slot = (int)e->slot_ids[i];
        tt_kv_cache_truncate(e->cache, slot, tt_kv_cache_length(e->cache, slot) - 1);
    }
    return tti_decode_launch(e, n, logits, drawn);
}

/* Every sequence that is not finished gives its newest token to one batch, and gets the next. */
static tt_status tti_engine_decode(tti_engine *e, int *n_out) {
    int i, n = 0;
    tt_tensor *logits;
    int32_t *drawn;
    tt_status status;
    for (i = 0; i < e->n_slots; i++) {
        const tti_sequence *q = &e->slots[i];
        if (q->item >= 0) { tti_batch_put(e, n++, i, q->tokens + q->length - 1, 1); }
    }
    *n_out = n;
    status = tti_decode_run(e, n, &logits, &drawn);
    if (status != TT_OK) { return status; }
    return drawn ? tti_sample_download(e, drawn, n) : tti_sample_on_host(e, logits, n);
}

/* The kept sets of the first n of `length` tokens, the others have none; tti_kept_free(ctx, to, length). */
static tt_status tti_kept_copy(tt_context *ctx, const tt_kept *from, int n, int length, tt_kept *to) {
    size_t count = from->at ? (size_t)from->at[n] : 0;
    int t;
    memset(to, 0, sizeof *to);
    if (!from->at || n == 0) { return TT_OK; }
    to->at = (int32_t *)tt_alloc(ctx, (size_t)length + 1, sizeof *to->at);
    to->ids = (int32_t *)tt_alloc(ctx, count + 1, sizeof *to->ids);
    if (!to->at || !to->ids) {
        tt_free(ctx, to->at, (size_t)length + 1, sizeof *to->at);
        tt_free(ctx, to->ids, count + 1, sizeof *to->ids);
        memset(to, 0, sizeof *to);
        return TT_ERR_MEM;
    }
    for (t = 0; t <= length; t++) { to->at[t] = from->at[t < n ? t : n]; }
    if (count > 0) { memcpy(to->ids, from->ids, count * sizeof *to->ids); }
    return TT_OK;
}

static void tti_kept_free(tt_context *ctx, tt_kept *kept, int n) {
    if (!kept->at) { return; }
    tt_free(ctx, kept->ids, (size_t)kept->at[n] + 1, sizeof *kept->ids);
    tt_free(ctx, kept->at, (size_t)n + 1, sizeof *kept->at);
    memset(kept, 0, sizeof *kept);
}

/* The sequence's tokens move to its completion, and the slot is empty. */
static tt_status tti_sequence_finish(tti_engine *e, tti_sequence *q, int stopped) {
    tt_completion *c = &e->out->items[q->item];
    size_t n = (size_t)(q->length - q->prompt_length);
    tt_kept kept;
    c->tokens = (int32_t *)tt_alloc(e->ctx, n, sizeof(int32_t));
    c->logprobs = (float *)tt_alloc(e->ctx, n, sizeof(float));
    c->sampled_logprobs = (float *)tt_alloc(e->ctx, n, sizeof(float));
    c->length = (int)n;
    kept.at = q->kept_at;
    kept.ids = q->kept.data;
    if (!c->tokens || !c->logprobs || !c->sampled_logprobs) { return TT_ERR_MEM; }
    if (tti_kept_copy(e->ctx, &kept, c->length, c->length, &c->kept) != TT_OK) { return TT_ERR_MEM; }
    c->stopped = stopped;
    memcpy(c->tokens, q->tokens + q->prompt_length, n * sizeof(int32_t));
    memcpy(c->logprobs, q->logprobs, n * sizeof(float));
    memcpy(c->sampled_logprobs, q->sampled, n * sizeof(float));
    e->out->n_tokens += n;
    q->item = -1;
    return TT_OK;
}

/* The kept set of the newest token goes to those of its response; an environment's token has none. */
static tt_status tti_sequence_keep(tti_engine *e, tti_sequence *q, int n_ids) {
    int n = q->length - q->prompt_length;
    tt_status status = TT_OK;
    if (!q->row) { return TT_OK; }
    if (q->kept.size > (size_t)(INT_MAX - n_ids)) {
        return tt_fail(e->ctx, TT_ERR_ARG, "tt_generate: kept sets of one response together above %d ids",
                       INT_MAX);
    }
    if (n == 1) { q->kept_at[0] = 0; }
    if (n_ids > 0) { status = tt_ids_append(&q->kept, q->row, (size_t)n_ids); }
    q->kept_at[n] = (int32_t)q->kept.size;
    return status;
}

/* The environment's turn: what it writes follows, as far as it fits. */
static tt_status tti_sequence_environment(tti_engine *e, tti_sequence *q) {
    const tt_sampling *s = &e->sampling;
    const tt_completion *c = tti_sequence_completion(e, q);
    int begin = q->prompt_length, vocab = e->model->config.vocab_size;
    tt_ids written = TT_INIT;
    tt_status status;
    size_t i;
    written.ctx = e->ctx;
    tt_error_clear(e->ctx);
    status = s->environment(s->environment_user, &e->requests[c->request], q->tokens + begin,
                            q->length - begin, &written);
    if (status != TT_OK && tt_error_status(e->ctx) == TT_OK) {
        tt_fail(e->ctx, status, "tt_generate: the environment of request %d, sample %d failed: %s",
                c->request, c->sample, tt_status_name(status));
    }
    for (i = 0; status == TT_OK && i < written.size && q->length - begin < s->max_new_tokens; i++) {
        int32_t id = written.data[i];
        if (id < 0 || id >= vocab) {
            status = tt_fail(e->ctx, TT_ERR_ARG, "tt_generate: the environment of request %d, sample %d "
                             "wrote token %d, expected 0..%d", c->request, c->sample, (int)id, vocab - 1);
            break;
        }
        tti_sequence_append(q, id, (float)NAN, (float)NAN);
        status = tti_sequence_keep(e, q, 0);
    }
    tt_ids_free(&written);
    return status;
}

/* The newest token of a slot: is it a number, what does on_token say, does the sequence end? */
static tt_status tti_sequence_accept(tti_engine *e, tti_sequence *q) {
    const tt_sampling *s = &e->sampling;
    const tt_completion *c = tti_sequence_completion(e, q);
    int n = q->length - q->prompt_length, stopped = 0, k;
    int32_t token = q->tokens[q->length - 1];
    float logprob = q->logprobs[n - 1];
    tt_status status;
    if (!isfinite(logprob)) {
        return tt_fail(e->ctx, TT_ERR_NUMBER, "tt_generate: the logits of request %d, sample %d, position %d "
                       "are not finite", c->request, c->sample, q->length - 1);
    }
    if (s->on_token && s->on_token(s->user, c->request, c->sample, token, logprob)) {
        return tt_fail(e->ctx, TT_ERR_STOP, "tt_generate: stopped by on_token");
    }
    for (k = 0; k < s->n_stop_tokens; k++) { stopped |= s->stop_tokens[k] == token; }
    TTI_TRY(tti_sequence_keep(e, q, q->n_row));
    if (s->environment && !stopped && n < s->max_new_tokens) { TTI_TRY(tti_sequence_environment(e, q)); }
    if (stopped || q->length - q->prompt_length == s->max_new_tokens) {
        status = tti_sequence_finish(e, q, stopped);
    }
done:
    return status;
}

/* Fill, decode, accept. *busy: whether there is more to do. */
static tt_status tti_engine_turn(tti_engine *e, int *busy) {
    tt_status status;
    int i, n = 0;
    TTI_TRY(tti_engine_fill(e));
    TTI_TRY(tti_engine_decode(e, &n));
    for (i = 0; i < n; i++) { TTI_TRY(tti_sequence_accept(e, &e->slots[e->slot_ids[i]])); }
    *busy = e->next_item < e->out->n;
    for (i = 0; i < n; i++) { *busy |= e->slots[e->slot_ids[i]].item >= 0; }
done:
    return status;
}

/* Turns until all is done; each gives back the memory of its step. */
static tt_status tti_engine_run(tti_engine *e) {
    tt_context *ctx = e->ctx;
    tti_mark host = tti_arena_mark(&ctx->host), device = tti_arena_mark(&ctx->device);
    tt_status status = tti_engine_prefix(e);
    int busy = 1;
    while (status == TT_OK && busy) {
        status = tti_engine_turn(e, &busy);
        tti_arena_release(&ctx->host, host);
        tti_arena_release(&ctx->device, device);
    }
    return status;
}

TT_API tt_status tt_generate(tt_model *model, const tt_request *requests, int n, const tt_sampling *sampling,
                             tt_completions *out) {
    tt_context *ctx = model->ctx;
    tti_engine e = TT_INIT;
    tt_status status;
    memset(out, 0, sizeof *out);
    out->ctx = ctx;
    if (ctx->graph_error) { return ctx->status; }
    if (n < 1) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: number of requests is %d, expected >= 1", n); }
    e.ctx = ctx;
    e.model = model;
    e.requests = requests;
    e.n_requests = n;
    e.sampling = *sampling;
    e.out = out;
    e.begin = tti_arena_mark(&ctx->device);
    e.floors[0] = ctx->host.floor;
    e.floors[1] = ctx->device.floor;
    tt_no_grad_begin(ctx);
    TTI_TRY(tti_sampling_check(ctx, &e.sampling));
    TTI_TRY(tti_engine_items(&e));
    TTI_TRY(tti_engine_open(&e));
    TTI_TRY(tti_engine_run(&e));
done:
    tt_no_grad_end(ctx);
    tti_engine_close(&e);
    if (status == TT_OK) { return tti_mended(ctx); }
    tt_completions_free(out);
    return status;
}

TT_API void tt_completions_free(tt_completions *c) {
    int i;
    for (i = 0; i < c->n; i++) {
        tt_free(c->ctx, c->items[i].tokens, (size_t)c->items[i].length, sizeof(int32_t));
        tt_free(c->ctx, c->items[i].logprobs, (size_t)c->items[i].length, sizeof(float));
        tt_free(c->ctx, c->items[i].sampled_logprobs, (size_t)c->items[i].length, sizeof(float));
        tti_kept_free(c->ctx, &c->items[i].kept, c->items[i].length);
    }
    if (c->items) { tt_free(c->ctx, c->items, (size_t)c->n, sizeof *c->items); }
    c->items = NULL;
    c->n = 0;
    c->n_tokens = 0;
}

/* ==== 10. optimizer ========================================================================
 * AdamW with decoupled decay and bias-corrected moments, over those parameters of a model that require a
 * gradient. Source: Loshchilov and Hutter 2017, arXiv 1711.05101. */

struct tt_optimizer {
    tt_context *ctx;
    tt_model *model;
    tt_adamw_desc desc;
    int n;                            /* parameters that require a gradient              */
    tt_tensor **params;               /* [n], of the model                               */
    tt_tensor **m, **v;               /* [n] first and second moments                    */
    double *squares, *host_squares;   /* [n] sums of squares of the gradients, on the backend and here */
    long step, n_skipped;
};

/* ---- [tt:optimizer.create] creation ---- */

/* NaN fails every comparison, so each condition is written as what must hold. */
static tt_status tti_adamw_check(tt_context *ctx, const tt_adamw_desc *d) {
    if (!(d->beta1 > 0 && d->beta1 < 1)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_adamw_create: beta1 is %g, expected in (0, 1)", (double)d->beta1);
    }
    if (!(d->beta2 > 0 && d->beta2 < 1)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_adamw_create: beta2 is %g, expected in (0, 1)", (double)d->beta2);
    }
    if (!(d->eps > 0 && d->eps <= 1) || !(d->weight_decay >= 0 && d->weight_decay <= 100) ||
        !(d->max_grad_norm >= 0) || !isfinite(d->max_grad_norm)) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_adamw_create: eps is %g, weight_decay %g, max_grad_norm %g, expected in (0, 1], "
                       "in [0, 100], finite and >= 0",
                       (double)d->eps, (double)d->weight_decay, (double)d->max_grad_norm);
    }
    return TT_OK;
}

/* Moments and sums for the n parameters of o. */
static tt_status tti_adamw_fill(tt_optimizer *o) {
    tt_context *ctx = o->ctx;
    int i, k = 0;
    o->params = (tt_tensor **)tt_alloc(ctx, (size_t)o->n, sizeof *o->params);
    o->m = (tt_tensor **)tt_alloc(ctx, (size_t)o->n, sizeof *o->m);
    o->v = (tt_tensor **)tt_alloc(ctx, (size_t)o->n, sizeof *o->v);
    o->host_squares = (double *)tt_alloc(ctx, (size_t)o->n, sizeof(double));
    o->squares = (double *)ctx->backend->alloc(ctx, (size_t)o->n * sizeof(double));
    if (!o->params || !o->m || !o->v || !o->squares || !o->host_squares) { return TT_ERR_MEM; }
    for (i = 0; i < tt_model_n_params(o->model); i++) {
        tt_tensor *p = tt_model_param(o->model, i);
        if (!p->requires_grad) { continue; }
        o->params[k] = p;
        o->m[k] = tt_tensor_create(ctx, TT_F32, p->ndim, p->shape, NULL);
        o->v[k] = o->m[k] ? tt_tensor_create(ctx, TT_F32, p->ndim, p->shape, NULL) : NULL;
        if (!o->v[k++]) { return TT_ERR_MEM; }
    }
    return TT_OK;
}

TT_API tt_optimizer *tt_adamw_create(tt_model *model, const tt_adamw_desc *desc) {
    static const tt_adamw_desc zero = TT_INIT;
    tt_context *ctx = tt_model_context(model);
    tt_adamw_desc d = desc ? *desc : zero;
    tt_optimizer *o;
    int i;
    if (d.beta1 == 0) { d.beta1 = 0.9f; }
    if (d.beta2 == 0) { d.beta2 = 0.999f; }
    if (d.eps == 0) { d.eps = 1e-8f; }
    if (tti_adamw_check(ctx, &d) != TT_OK) { return NULL; }
    o = (tt_optimizer *)tt_alloc(ctx, 1, sizeof *o);
    if (!o) { return NULL; }
    o->ctx = ctx;
    o->model = model;
    o->desc = d;
    for (i = 0; i < tt_model_n_params(model); i++) { o->n += tt_model_param(model, i)->requires_grad != 0; }
    if (o->n == 0) {
        tt_fail(ctx, TT_ERR_ARG, "tt_adamw_create: no parameter of the model requires a gradient");
    }
    if (o->n > 0 && tti_adamw_fill(o) == TT_OK) { return o; }
    tt_optimizer_destroy(o);
    return NULL;
}

TT_API void tt_optimizer_destroy(tt_optimizer *o) {
    int i;
    if (!o) { return; }
    for (i = 0; i < o->n; i++) {
        if (o->m) { tt_tensor_destroy(o->m[i]); }
        if (o->v) { tt_tensor_destroy(o->v[i]); }
    }
    if (o->squares) { o->ctx->backend->free(o->ctx, o->squares, (size_t)o->n * sizeof(double)); }
    tt_free(o->ctx, o->host_squares, (size_t)o->n, sizeof(double));
    tt_free(o->ctx, o->params, (size_t)o->n, sizeof *o->params);
    tt_free(o->ctx, o->m, (size_t)o->n, sizeof *o->m);
    tt_free(o->ctx, o->v, (size_t)o->n, sizeof *o->v);
    tt_free(o->ctx, o, 1, sizeof *o);
}

/* ---- [tt:optimizer.step] one update ---- */

/* One number for each parameter, summed here; they come down together, so that a
 * device is waited for once. */
static tt_status tti_grad_norm(tt_optimizer *o, double *norm) {
    const tt_backend *backend = o->ctx->backend;
    size_t bytes = (size_t)o->n * sizeof(double);
    double total = 0;
    tt_status status;
    int i;
    TTI_TRY(backend->zero(o->ctx, o->squares, bytes));
    for (i = 0; i < o->n; i++) {
        const float *g = tt_grad(o->params[i]);
        if (g) { TTI_TRY(backend->sum_squares(o->ctx, g, o->params[i]->size, o->squares + i)); }
    }
    if (o->ctx->graph_error) { return o->ctx->status; }
    TTI_TRY(backend->download(o->ctx, o->host_squares, o->squares, bytes));
    for (i = 0; i < o->n; i++) { total += o->host_squares[i]; }
    *norm = sqrt(total);
done:
    return status;
}

/* Parameter k moves by its gradient times grad_scale:
 *     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,
 *     p -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay p). */
static tt_status tti_adamw_move(tt_optimizer *o, int k, float lr, double grad_scale) {
    tt_tensor *p = o->params[k];
    tt_adamw_args a;
    a.g = tt_grad(p);
    if (!a.g) { return TT_OK; }
    a.n = p->size;
    a.p = TT_F(p);
    a.m = TT_F(o->m[k]);
    a.v = TT_F(o->v[k]);
    a.lr = lr;
    a.beta1 = o->desc.beta1;
    a.beta2 = o->desc.beta2;
    a.eps = o->desc.eps;
    a.weight_decay = p->ndim > 1 || o->desc.decay_all ? o->desc.weight_decay : 0;
    a.correction1 = (float)(1.0 - pow((double)a.beta1, (double)o->step));
    a.correction2 = (float)(1.0 - pow((double)a.beta2, (double)o->step));
    a.grad_scale = (float)grad_scale;
    p->panels_at = 0;
    return o->ctx->backend->adamw(o->ctx, &a);
}

/* The gradients are scaled by min(1, max_grad_norm / (norm + 1e-6)), as torch's clip_grad_norm_ does. A norm
 * that is not finite leaves weights and moments alone: one bad batch must not end a run. */
TT_API tt_status tt_optimizer_step(tt_optimizer *o, float lr, tt_optimizer_stats *stats) {
    tt_context *ctx = o->ctx;
    double norm = 0, scale = 1;
    tt_status status;
    int i, skip;
    if (ctx->graph_error) { return ctx->status; }
    if (!(lr >= 0 && lr <= TT_MAX_LR)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_optimizer_step: lr is %g, expected 0 .. %g", (double)lr,
                       (double)TT_MAX_LR);
    }
    status = tti_grad_norm(o, &norm);
    if (status != TT_OK) { return status; }
    skip = !isfinite(norm);
    o->n_skipped += skip;
    o->step += !skip;
    if (o->desc.max_grad_norm > 0) { scale = (double)o->desc.max_grad_norm / (norm + 1e-6); }
    for (i = 0; !skip && i < o->n; i++) {
        status = tti_adamw_move(o, i, lr, scale > 1 ? 1 : scale);
        if (status != TT_OK) { return status; }
    }
    tt_model_zero_grad(o->model);
    if (stats) {
        stats->grad_norm = norm;
        stats->skipped = skip;
        stats->n_skipped = o->n_skipped;
        stats->step = o->step;
    }
    return tt_eval(ctx);
}

/* ---- [tt:optimizer.state] saving and loading ----
 * Tensors "model.NAME", "adamw.m.NAME", "adamw.v.NAME", then the caller's own; the state is
 * {"step", "n_skipped", "user": the caller's JSON as a text}. */

/* All tensors of the state, by names that are written one after another into `names`. */
static tt_named *tti_optimizer_tensors(tt_optimizer *o, const tt_named *also, int n_also, tt_text *names) {
    static const char *const prefix[3] = {"model.", "adamw.m.", "adamw.v."};
    tt_named *list = (tt_named *)tt_alloc(o->ctx, (size_t)(3 * o->n + n_also), sizeof *list);
    size_t at = 0;
    tt_status status = list ? TT_OK : TT_ERR_MEM;
    int k;
    for (k = 0; k < 3 * o->n && status == TT_OK; k++) {
        status = tt_text_format(names, "%s%s", prefix[k / o->n], o->params[k % o->n]->name);
        if (status == TT_OK) { status = tt_text_append(names, "", 1); }
    }
    if (status != TT_OK) {
        tt_free(o->ctx, list, (size_t)(3 * o->n + n_also), sizeof *list);
        return NULL;
    }
    for (k = 0; k < 3 * o->n; k++) {      /* only now: a text that grows moves */
        tt_tensor **const of[3] = {o->params, o->m, o->v};
        list[k].name = names->data + at;
        list[k].tensor = of[k / o->n][k % o->n];
        at += strlen(list[k].name) + 1;
    }
    for (k = 0; k < n_also; k++) { list[3 * o->n + k] = also[k]; }
    return list;
}

/* The caller's JSON is a text within ours, so that it may be anything. */
static tt_status tti_optimizer_save(tt_optimizer *o, const char *path, const char *json, const tt_named *also,
                                    int n_also) {
    tt_text names = TT_INIT, state = TT_INIT;
    tt_named *list;
    tt_status status;
    names.ctx = state.ctx = o->ctx;
    list = tti_optimizer_tensors(o, also, n_also, &names);
    status = list ? TT_OK : tt_error_status(o->ctx);
    if (status != TT_OK) { goto done; }
    TTI_TRY(tt_text_format(&state, "{\"step\":%ld,\"n_skipped\":%ld,\"user\":", o->step, o->n_skipped));
    TTI_TRY(tt_text_json(&state, json ? json : "", json ? strlen(json) : 0));
    TTI_TRY(tt_text_append(&state, "}", 1));
    TTI_TRY(tt_state_save(o->ctx, path, list, 3 * o->n + n_also, state.data));
done:
    tt_free(o->ctx, list, (size_t)(3 * o->n + n_also), sizeof *list);
    tt_text_free(&names);
    tt_text_free(&state);
    return status;
}

TT_API tt_status tt_optimizer_save(tt_optimizer *o, const char *path, const char *json, const tt_named *also,
                                   int n_also) {
    return tti_tried(o->ctx, "tt_optimizer_save", tti_optimizer_save(o, path, json, also, n_also));
}

/* The counters of a state, and the caller's JSON, appended to json_out unless that is NULL. */
static tt_status tti_optimizer_read(tt_context *ctx, const char *path, uint64_t counters[2],
                                    tt_text *json_out) {
    tt_text state = TT_INIT;
    tt_json *root = NULL;
    const tt_json *text;
    tt_status status;
    state.ctx = ctx;
    TTI_TRY(tt_state_json(ctx, path, &state));
    root = tt_json_parse(ctx, state.data ? state.data : "", state.size);
    if (!root) {
        status = tti_file_fail(ctx, path, "state: ");
        goto done;
    }
    text = tt_json_get(root, "user");
    if (!text || text->type != TT_JSON_STRING ||
        !tti_json_whole(tt_json_get(root, "step"), LONG_MAX, &counters[0]) ||
        !tti_json_whole(tt_json_get(root, "n_skipped"), LONG_MAX, &counters[1])) {
        status = tt_fail(ctx, TT_ERR_FILE,
                         "%s: no optimizer state: expected step and n_skipped, whole numbers, and "
                         "user, a text",
                         path);
        goto done;
    }
    if (json_out) { TTI_TRY(tt_text_append(json_out, text->string, text->length)); }
done:
    tt_json_free(ctx, root);
    tt_text_free(&state);
    return status;
}

TT_API tt_status tt_optimizer_peek(tt_optimizer *o, const char *path, tt_text *json_out) {
    uint64_t counters[2];
    return tti_tried(o->ctx, "tt_optimizer_peek", tti_optimizer_read(o->ctx, path, counters, json_out));
}

/* All that can fail comes before the first tensor is changed. */
static tt_status tti_optimizer_load(tt_optimizer *o, const char *path, tt_text *json_out,
                                    const tt_named *also, int n_also) {
    size_t before = json_out ? json_out->size : 0;
    tt_text names = TT_INIT;
    tt_named *list = NULL;
    uint64_t counters[2] = {0, 0};
    tt_status status;
    names.ctx = o->ctx;
    TTI_TRY(tti_optimizer_read(o->ctx, path, counters, json_out));
    list = tti_optimizer_tensors(o, also, n_also, &names);
    status = list ? tt_state_load(o->ctx, path, list, 3 * o->n + n_also, NULL) : tt_error_status(o->ctx);
    if (status != TT_OK) { goto done; }
    o->step = (long)counters[0];
    o->n_skipped = (long)counters[1];
done:
    if (status != TT_OK && json_out) { json_out->size = before; }
    tt_free(o->ctx, list, (size_t)(3 * o->n + n_also), sizeof *list);
    tt_text_free(&names);
    return status;
}

TT_API tt_status tt_optimizer_load(tt_optimizer *o, const char *path, tt_text *json_out, const tt_named *also,
                                   int n_also) {
    return tti_tried(o->ctx, "tt_optimizer_load", tti_optimizer_load(o, path, json_out, also, n_also));
}

/* ---- [tt:optimizer.schedule] learning rate ---- */

/* Warm-up is linear from lr / warmup_steps; then with progress s from 0 to 1: linear lr + (min - lr) s,
 * cosine min + (lr - min) (1 + cos(pi s)) / 2. */
TT_API float tt_learning_rate(const tt_schedule *s, int step) {
    double progress, lr = (double)s->lr, low = (double)s->min_lr;
    int span = s->total_steps - s->warmup_steps;
    if (step < s->warmup_steps) { return (float)(lr * (step + 1) / s->warmup_steps); }
    if (s->type == TT_CONSTANT || span < 1) { return s->lr; }
    progress = (double)(step - s->warmup_steps) / span;
    if (progress > 1) { progress = 1; }
    if (s->type == TT_LINEAR) { return (float)(lr + (low - lr) * progress); }
    return (float)(low + (lr - low) * 0.5 * (1.0 + cos(3.141592653589793 * progress)));
}

/* ==== 11. grpo =============================================================================
 * Rollouts stand group by group. One optimizer batch is: tt_grpo_advantages over all rollouts, then for each
 * micro-batch tt_rollouts_batch, tt_model_logprobs, tt_grpo_loss, tt_backward.
 *
 * What can be chosen (advantage, loss, aggregation, KL, correction) is a table with one row for each choice:
 * name, formula, source, and a function of a few lines that stands above the table. The loss of a batch is a
 * function of two short vectors, log-probs and entropies of the response tokens, so it is computed on the
 * host in double, value and slopes in one pass, and enters the graph as one op. */

static double tti_clip(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

/* ---- [tt:grpo.rollouts] rollouts ---- */

static void tti_rollout_free(tt_context *ctx, tt_rollout *r) {
    size_t n = (size_t)r->response_length, length = (size_t)r->prompt_length + n;
    tt_free(ctx, r->tokens, length, sizeof *r->tokens);
    tt_free(ctx, r->kind, length, 1);
    tt_free(ctx, r->sampling_logprobs, n, sizeof(float));
    tt_free(ctx, r->old_logprobs, n, sizeof(float));
    tt_free(ctx, r->ref_logprobs, n, sizeof(float));
    tt_free(ctx, r->advantages, n, sizeof(float));
    tti_kept_free(ctx, &r->kept, r->response_length);
    r->tokens = NULL;
    r->kind = NULL;
    r->sampling_logprobs = r->old_logprobs = r->ref_logprobs = r->advantages = NULL;
}

/* Tokens of a response: `n` of them, and which one ends it. */
typedef struct tti_response { const int32_t *tokens; int n, end_token; } tti_response;

/* Gives r arrays for its prompt (prompt_length tokens) and a response of the student. */
static tt_status tti_rollout_fill(tt_context *ctx, tt_rollout *r, const int32_t *prompt,
                                  const tti_response *response) {
    size_t n = (size_t)response->n, begin = (size_t)r->prompt_length;
    int t, ends = 0;
    r->response_length = response->n;
    r->tokens = (int32_t *)tt_alloc(ctx, begin + n, sizeof *r->tokens);
    r->kind = (unsigned char *)tt_alloc(ctx, begin + n, 1);
    r->sampling_logprobs = (float *)tt_alloc(ctx, n, sizeof(float));
    if (!r->tokens || !r->kind || !r->sampling_logprobs) {
        tti_rollout_free(ctx, r);
        return TT_ERR_MEM;
    }
    memcpy(r->tokens, prompt, begin * sizeof *r->tokens);
    memcpy(r->tokens + begin, response->tokens, n * sizeof *r->tokens);
    memset(r->kind + begin, TT_KIND_STUDENT, n);
    for (t = 0; t < response->n; t++) { ends += response->tokens[t] == response->end_token; }
    r->stopped = ends == 1 && response->tokens[response->n - 1] == response->end_token;
    return TT_OK;
}

/* Rollout number i from its completion. */
static tt_status tti_rollout_begin(tt_rollouts *all, int i, const tt_request *q, const tt_completion *c,
                                   int end_token) {
    tt_rollout *r = &all->items[i];
    tti_response response;
    const float *drawn;
    tt_status status;
    int t;
    if (c->request != i / all->num_generations) {
        return tt_fail(all->ctx, TT_ERR_ARG,
                       "tt_rollouts_create: completion %d is of request %d, expected %d for each request", i,
                       c->request, all->num_generations);
    }
    r->group = c->request;
    r->sample = c->sample;
    r->kl_cost = (double)NAN;
    r->prompt_id = q->id;
    r->prompt_length = q->prompt_length;
    response.tokens = c->tokens;
    response.n = c->length;
    response.end_token = end_token;
    status = tti_rollout_fill(all->ctx, r, q->prompt, &response);
    if (status != TT_OK) { return status; }
    drawn = c->sampled_logprobs ? c->sampled_logprobs : c->logprobs;
    memcpy(r->sampling_logprobs, drawn, (size_t)c->length * sizeof(float));
    for (t = 0; t < c->length; t++) {
        if (isnan(c->logprobs[t])) { r->kind[r->prompt_length + t] = TT_KIND_ENVIRONMENT; }
    }
    return tti_kept_copy(all->ctx, &c->kept, c->length, c->length, &r->kept);
}

/* Completions come request by request, num_generations of each: the groups. */
TT_API tt_status tt_rollouts_create(tt_context *ctx, const tt_request *requests, int n_requests,
                                    const tt_completions *completions, int end_token, tt_rollouts *out) {
    int n = completions->n, i;
    tt_status status = TT_OK;
    memset(out, 0, sizeof *out);
    out->ctx = ctx;
    if (n_requests < 1 || n < n_requests || n % n_requests) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_rollouts_create: %d completions of %d requests, expected the same number for each",
                       n, n_requests);
    }
    out->items = (tt_rollout *)tt_alloc(ctx, (size_t)n, sizeof *out->items);
    out->questions = (char **)tt_alloc(ctx, (size_t)n_requests, sizeof *out->questions);
    out->n = out->items ? n : 0;
    out->n_groups = out->questions ? n_requests : 0;
    out->num_generations = n / n_requests;
    out->n_rewards = 1;
    if (!out->items || !out->questions) { status = TT_ERR_MEM; }
    for (i = 0; i < out->n && status == TT_OK; i++) {
        const tt_completion *c = &completions->items[i];
        status = tti_rollout_begin(out, i, &requests[c->request], c, end_token);
    }
    if (status != TT_OK) { tt_rollouts_free(out); }
    return status;
}

TT_API tt_status tt_rollouts_question(tt_rollouts *all, int group, const char *text) {
    char *copy;
    if (group < 0 || group >= all->n_groups) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollouts_question: group is %d, expected 0..%d", group,
                       all->n_groups - 1);
    }
    copy = tti_strdup(all->ctx, text);
    if (!copy) { return TT_ERR_MEM; }
    tti_strfree(all->ctx, all->questions[group]);
    all->questions[group] = copy;
    return TT_OK;
}

/* The attempt keeps its log-probs, the sets that it was drawn from and what an environment wrote; a
 * teacher's words have none, for nobody sampled them here. */
TT_API tt_status tt_rollout_replace(tt_rollouts *all, int index, const int32_t *response, int length,
                                    int attempt_length, int end_token) {
    tt_rollout *r, fresh;
    tti_response text;
    int most, t;
    if (index < 0 || index >= all->n) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollout_replace: index is %d, expected 0..%d", index,
                       all->n - 1);
    }
    r = &all->items[index];
    most = length < r->response_length ? length : r->response_length;
    if (attempt_length < 0 || attempt_length > most || length < 1) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollout_replace: attempt_length is %d, expected 0..%d",
                       attempt_length, most);
    }
    text.tokens = response;
    text.n = length;
    text.end_token = end_token;
    fresh = *r;
    fresh.old_logprobs = fresh.ref_logprobs = fresh.advantages = NULL;
    fresh.kl_cost = (double)NAN;
    if (tti_kept_copy(all->ctx, &r->kept, attempt_length, length, &fresh.kept) != TT_OK ||
        tti_rollout_fill(all->ctx, &fresh, r->tokens, &text) != TT_OK) {
        return TT_ERR_MEM;
    }
    memcpy(fresh.sampling_logprobs, r->sampling_logprobs, (size_t)attempt_length * sizeof(float));
    for (t = 0; t < length; t++) {
        unsigned char *kind = &fresh.kind[fresh.prompt_length + t];
        if (t >= attempt_length) {
            fresh.sampling_logprobs[t] = (float)NAN;
            *kind = TT_KIND_TEACHER;
        } else if (r->kind[r->prompt_length + t] == TT_KIND_ENVIRONMENT) {
            *kind = TT_KIND_ENVIRONMENT;
        }
    }
    fresh.guided = 1;
    fresh.off_policy = 0;
    fresh.attempt_length = attempt_length;
    fresh.attempt_reward = r->reward;
    tti_rollout_free(all->ctx, r);
    *r = fresh;
    return TT_OK;
}

/* A replaced response of which no token is the attempt's. */
TT_API tt_status tt_rollout_off_policy(tt_rollouts *all, int index, const int32_t *response, int length,
                                       int end_token) {
    tt_status status = tt_rollout_replace(all, index, response, length, 0, end_token);
    tt_rollout *r;
    if (status != TT_OK) { return status; }
    r = &all->items[index];
    r->guided = 0;
    r->off_policy = 1;
    memset(r->kind + r->prompt_length, TT_KIND_OFF_POLICY, (size_t)length);
    return TT_OK;
}

TT_API tt_status tt_rollout_advantages(tt_rollouts *all, int index, const float *advantages) {
    tt_rollout *r;
    size_t n;
    int t;
    if (index < 0 || index >= all->n) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollout_advantages: index is %d, expected 0..%d", index,
                       all->n - 1);
    }
    r = &all->items[index];
    n = (size_t)r->response_length;
    for (t = 0; advantages && t < r->response_length; t++) {
        if (isfinite(advantages[t])) { continue; }
        return tt_fail(all->ctx, TT_ERR_NUMBER, "tt_rollout_advantages: prompt %d, sample %d, token %d has "
                       "%g, expected a finite number", r->group, r->sample, t, (double)advantages[t]);
    }
    if (!advantages) {
        tt_free(all->ctx, r->advantages, n, sizeof(float));
        r->advantages = NULL;
        return TT_OK;
    }
    if (!r->advantages) { r->advantages = (float *)tt_alloc(all->ctx, n, sizeof(float)); }
    if (!r->advantages) { return TT_ERR_MEM; }
    memcpy(r->advantages, advantages, n * sizeof(float));
    return TT_OK;
}

TT_API void tt_rollouts_free(tt_rollouts *all) {
    int i;
    for (i = 0; i < all->n; i++) { tti_rollout_free(all->ctx, &all->items[i]); }
    for (i = 0; i < all->n_groups; i++) { tti_strfree(all->ctx, all->questions[i]); }
    if (all->items) { tt_free(all->ctx, all->items, (size_t)all->n, sizeof *all->items); }
    if (all->questions) { tt_free(all->ctx, all->questions, (size_t)all->n_groups, sizeof *all->questions); }
    all->items = NULL;
    all->questions = NULL;
    all->n = all->n_groups = 0;
}

/* Rollouts of a micro-batch: how many, and the k-th. */
static int tti_batch_size(const tt_loss_batch *b) {
    return b->indices ? b->n : b->rollouts->n;
}

static const tt_rollout *tti_rollout_at(const tt_rollouts *all, const int *indices, int k) {
    return &all->items[indices ? indices[k] : k];
}

static const tt_rollout *tti_batch_at(const tt_loss_batch *b, int k) {
    return tti_rollout_at(b->rollouts, b->indices, k);
}

/* The kept sets of all responses of the batch, in the step's memory; none if no response has any. */
static int tti_batch_keep(tt_context *ctx, const tt_rollouts *all, const int *indices, int n, tt_kept *kept) {
    size_t tokens = 0, ids = 0, at = 0;
    int i, t, any = 0;
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        tokens += (size_t)r->response_length;
        ids += r->kept.at ? (size_t)r->kept.at[r->response_length] : 0;
        any |= r->kept.at != NULL;
    }
    if (!any) { return 1; }
    kept->at = (int32_t *)tti_step_alloc(ctx, (tokens + 1) * sizeof(int32_t));
    kept->ids = (int32_t *)tti_step_alloc(ctx, (ids + 1) * sizeof(int32_t));
    if (!kept->at || !kept->ids) { return 0; }
    for (i = 0, ids = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        const tt_kept *k = &r->kept;
        size_t count = k->at ? (size_t)k->at[r->response_length] : 0;
        if (count > 0) { memcpy(kept->ids + ids, k->ids, count * sizeof(int32_t)); }
        for (t = 1; t <= r->response_length; t++) {
            kept->at[++at] = (int32_t)ids + (k->at ? k->at[t] : 0);
        }
        ids += count;
    }
    return 1;
}

/* A batch of rollouts while its sequences are laid end to end. */
typedef struct tti_layout {
    int32_t *offsets, *parents, *tokens;
    unsigned char *mask;
    int n;                           /* sequences so far */
} tti_layout;

/* A batch's arrays, in the memory of the step. parents: which sequence one goes on from, [tt:batch.batch]. */
static int tti_layout_alloc(tt_context *ctx, tti_layout *l, int n_sequences, int n_tokens) {
    size_t n = (size_t)n_sequences, total = (size_t)n_tokens;
    l->offsets = (int32_t *)tti_step_alloc(ctx, (2 * n + 1) * sizeof *l->offsets);
    l->tokens = (int32_t *)tti_step_alloc(ctx, total * sizeof *l->tokens);
    l->mask = (unsigned char *)tti_step_alloc(ctx, total);
    l->parents = l->offsets ? l->offsets + n + 1 : NULL;
    l->n = 0;
    return l->offsets && l->tokens && l->mask;
}

/* Tokens begin .. end - 1 of r go on from a parent, -1 = none. Those of the response are targets. */
static int tti_layout_add(tti_layout *l, const tt_rollout *r, int begin, int end, int parent) {
    int at = l->offsets[l->n], t;
    memcpy(l->tokens + at, r->tokens + begin, (size_t)(end - begin) * sizeof *l->tokens);
    for (t = begin; t < end; t++) { l->mask[at + t - begin] = t >= r->prompt_length; }
    l->parents[l->n++] = (int32_t)parent;
    l->offsets[l->n] = (int32_t)(at + end - begin);
    return l->n - 1;
}

/* How many tokens the prompts of a and b begin with alike, of at most `most`. */
static int tti_common_tokens(const tt_rollout *a, const tt_rollout *b, int most) {
    int n = 0;
    while (n < most && a->tokens[n] == b->tokens[n]) { n++; }
    return n;
}

static int tti_same_prompt(const tt_rollout *a, const tt_rollout *b) {
    int n = a->prompt_length;
    return b->prompt_length == n && tti_common_tokens(a, b, n) == n;
}

/* What all n prompts begin with, then what is left of each group's prompt, then the responses: a tree. The
 * last token of a prompt predicts a response's first, so it is the response's own. */
static void tti_layout_shared(tti_layout *l, const tt_rollouts *all, const int *indices, int n) {
    const tt_rollout *first = tti_rollout_at(all, indices, 0);
    int common = first->prompt_length - 1, root = -1, prompt = -1, repeats = 0, i;
    for (i = 1; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        common = tti_common_tokens(first, r, common < r->prompt_length - 1 ? common : r->prompt_length - 1);
    }
    if (n == 1) { common = 0; }
    if (common > 0) { root = tti_layout_add(l, first, 0, common, -1); }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        int last = r->prompt_length - 1, end = r->prompt_length + r->response_length, repeated = repeats;
        repeats = i + 1 < n && tti_same_prompt(r, tti_rollout_at(all, indices, i + 1));
        if (!repeated) { prompt = repeats && last > common ? tti_layout_add(l, r, common, last, root) : -1; }
        tti_layout_add(l, r, prompt >= 0 ? last : common, end, prompt >= 0 ? prompt : root);
    }
}

/* Prompts are context, responses targets: also those of teacher and environment, whose log-probs may be
 * wanted. */
TT_API tt_batch *tt_rollouts_batch(tt_context *ctx, const tt_rollouts *all, const int *indices, int n) {
    tt_batch_desc desc = TT_INIT;
    tt_kept kept = TT_INIT;
    tt_batch *batch;
    tti_layout l;
    int i, total = 0;
    if (ctx->graph_error) { return NULL; }
    if (!indices) { n = all->n; }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        total += r->prompt_length + r->response_length;
    }
    if (!tti_layout_alloc(ctx, &l, all->share_prompts ? 2 * n + 1 : n, total) ||
        !tti_batch_keep(ctx, all, indices, n, &kept)) {
        ctx->graph_error = 1;
        return NULL;
    }
    if (all->share_prompts && n > 0) {
        tti_layout_shared(&l, all, indices, n);
        desc.parents = l.parents;
    }
    for (i = 0; i < n && !all->share_prompts; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        tti_layout_add(&l, r, 0, r->prompt_length + r->response_length, -1);
    }
    desc.n_sequences = l.n;
    desc.offsets = l.offsets;
    desc.tokens = l.tokens;
    desc.mask = l.mask;
    batch = tt_batch_create(ctx, &desc);
    if (batch) { batch->kept = kept; }
    return batch;
}

TT_API int tt_rollouts_tokens(const tt_rollouts *all, int begin, int i) {
    const tt_rollout *r = &all->items[i];
    int shared = all->share_prompts && i > begin && r->group == r[-1].group;
    return (shared ? 0 : r->prompt_length) + r->response_length;
}

/* ---- [tt:grpo.score] responses under another context and another model ----
 * In runs of neighbours, as many as micro_batch_tokens holds; one that is not scored ends a run. */

/* Tokens of response i with its context; not scored: 0 for want of a context, -1 for want of room. */
static tt_status tti_score_length(const tt_rollouts *all, const tt_scoring *s, int i, int *length) {
    const tt_rollout *r = &all->items[i];
    int limit = tt_model_config_get(s->model)->max_position_embeddings;
    int context = s->contexts ? s->contexts[i].prompt_length : r->prompt_length, n = r->response_length;
    *length = context < 1 ? 0 : context <= limit - n ? context + n : -1;
    if (*length >= 0 || s->skip_long) { return TT_OK; }
    return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollouts_logprobs: the context of prompt %d, sample %d has %d "
                   "tokens and its response %d, together above max_position_embeddings %d", r->group,
                   r->sample, context, n, limit);
}

/* The same responses with a context for a prompt, in the step's memory. */
static tt_rollout *tti_score_items(tt_context *ctx, const tt_rollout *from, const tt_request *contexts,
                                   int n) {
    tt_rollout *items = (tt_rollout *)tti_step_alloc(ctx, (size_t)n * sizeof *items);
    int i;
    for (i = 0; items && i < n; i++) {
        size_t begin = (size_t)contexts[i].prompt_length, count = (size_t)from[i].response_length;
        items[i] = from[i];
        items[i].prompt_length = contexts[i].prompt_length;
        items[i].tokens = (int32_t *)tti_step_alloc(ctx, (begin + count) * sizeof(int32_t));
        if (!items[i].tokens) { return NULL; }
        memcpy(items[i].tokens, contexts[i].prompt, begin * sizeof(int32_t));
        memcpy(items[i].tokens + begin, from[i].tokens + from[i].prompt_length, count * sizeof(int32_t));
    }
    return items;
}

/* The run of n responses from `begin` on, in one forward pass. */
static tt_status tti_score_run(const tt_rollouts *all, const tt_scoring *s, int begin, int n, float *out) {
    tt_context *ctx = tt_model_context(s->model);
    tt_rollouts run = *all;
    tt_batch *batch;
    tt_tensor *logprobs;
    tt_status status = TT_ERR_MEM;
    run.n = n;
    run.items += begin;
    if (s->contexts) { run.items = tti_score_items(ctx, run.items, s->contexts + begin, n); }
    if (run.items) {
        tt_no_grad_begin(ctx);
        batch = tt_rollouts_batch(ctx, &run, NULL, 0);
        logprobs = tt_model_logprobs(s->model, batch, s->temperature != 0 ? s->temperature : 1, NULL);
        tt_no_grad_end(ctx);
        status = logprobs ? tt_tensor_get(logprobs, out) : tt_eval(ctx);
    }
    tt_step_reset(ctx);
    return status;
}

TT_API tt_status tt_rollouts_logprobs(const tt_rollouts *all, const tt_scoring *s, float *out,
                                      int *n_skipped) {
    int most = s->micro_batch_tokens ? s->micro_batch_tokens : 8192, skipped = 0, begin = 0, length = 0;
    tt_status status = TT_OK;
    if (!s->model) { return tt_fail(all->ctx, TT_ERR_ARG, "tt_rollouts_logprobs: model is NULL"); }
    while (begin < all->n) {
        int end = begin, left = most, t;
        size_t count = 0;
        for (; end < all->n; end++) {
            TTI_TRY(tti_score_length(all, s, end, &length));
            if (length <= 0) { break; }
            if (!s->contexts) { length = tt_rollouts_tokens(all, begin, end); }
            if (end > begin && length > left) { break; }
            left -= length < left ? length : left;
            count += (size_t)all->items[end].response_length;
        }
        if (end > begin) {
            TTI_TRY(tti_score_run(all, s, begin, end - begin, out));
        } else {
            for (t = 0; t < all->items[end].response_length; t++) { out[count++] = (float)NAN; }
            skipped += length < 0;
            end++;
        }
        out += count;
        begin = end;
    }
    if (n_skipped) { *n_skipped = skipped; }
done:
    return status;
}

/* ---- [tt:grpo.tokens] which tokens count ---- */

static tt_token_kind tti_kind_of(const tt_rollout *r, int t) {
    return (tt_token_kind)r->kind[r->prompt_length + t];
}

/* Truncated responses may leave the loss (DAPO's overlong filtering): their reward says nothing of it. */
static int tti_in_loss(const tt_rollout *r, int t, const tt_grpo_config *c) {
    return tti_kind_of(r, t) != TT_KIND_ENVIRONMENT && (r->stopped || !c->mask_truncated_completions);
}

static double tti_advantage_at(const tt_rollout *r, int t) {
    return (double)(r->advantages ? r->advantages[t] : r->advantage);
}

/* The student's own tokens have the policy loss; all others in the loss have one of their own. */
static int tti_is_student(const tt_rollout *r, int t) {
    return tti_kind_of(r, t) == TT_KIND_STUDENT;
}

static int tti_loss_tokens(const tt_rollout *r, const tt_grpo_config *c) {
    int t, n = 0;
    for (t = 0; t < r->response_length; t++) { n += tti_in_loss(r, t, c); }
    return n;
}

/* All of them are whole numbers: sums over parts and processes are exact in any order. */
TT_API tt_loss_totals tt_grpo_totals(const tt_rollouts *all, const tt_grpo_config *c) {
    tt_loss_totals d = TT_INIT;
    int i, t;
    for (i = 0; i < all->n; i++) {
        const tt_rollout *r = &all->items[i];
        int n = tti_loss_tokens(r, c);
        d.tokens += n;
        d.filled += n > 0;
        if (r->response_length > d.longest) { d.longest = r->response_length; }
        for (t = 0; t < r->response_length; t++) {
            d.guided += tti_in_loss(r, t, c) && !tti_is_student(r, t);
        }
    }
    d.sequences = all->n;
    return d;
}

/* ---- [tt:grpo.aggregation] the weight of a token whose response has n tokens in the loss ---- */

typedef struct tti_denominators {
    tt_loss_totals of;         /* the optimizer batch              */
    double micro;              /* tokens of the micro-batch        */
    double limit;              /* max_completion_length            */
} tti_denominators;

static double tti_weight_token_mean(const tti_denominators *d, int n) { (void)n; return 1 / d->of.tokens; }
static double tti_weight_seq_mean(const tti_denominators *d, int n) { return 1 / (n * d->of.sequences); }
static double tti_weight_seq_sum(const tti_denominators *d, int n) { (void)n; return 1 / d->of.filled; }

static double tti_weight_dr_grpo(const tti_denominators *d, int n) {
    (void)n;
    return 1 / (d->of.sequences * d->limit);
}

static double tti_weight_seq_filled(const tti_denominators *d, int n) {
    return 1 / ((n + 1e-8) * d->of.filled);
}

static double tti_weight_seq_norm(const tti_denominators *d, int n) { (void)n; return 1 / d->of.longest; }
static double tti_weight_luspo(const tti_denominators *d, int n) { (void)n; return 1 / d->of.sequences; }
static double tti_weight_bnpo(const tti_denominators *d, int n) { (void)n; return 1 / d->micro; }
static double tti_weight_one(const tti_denominators *d, int n) { (void)d; (void)n; return 1; }

typedef struct tti_aggregation_row {
    tt_choice choice;
    double (*weight)(const tti_denominators *, int n);
} tti_aggregation_row;

static const tti_aggregation_row tti_aggregations[] = {   /* in the order of tt_aggregation */
    {{"token_mean", "1 / all tokens", "DAPO, arXiv 2503.14476; TRL dapo, verl token-mean"},
     tti_weight_token_mean},
    {{"seq_mean_token_mean", "1 / (n responses)", "GRPO, arXiv 2402.03300; TRL grpo"}, tti_weight_seq_mean},
    {{"seq_mean_token_sum", "1 / non-empty responses", "verl seq-mean-token-sum"}, tti_weight_seq_sum},
    {{"dr_grpo", "1 / (responses max_completion_length)", "Dr.GRPO, arXiv 2503.20783"}, tti_weight_dr_grpo},
    {{"seq_mean_filled", "1 / ((n + 1e-8) non-empty responses)", "verl seq-mean-token-mean"},
     tti_weight_seq_filled},
    {{"seq_sum_norm", "1 / longest response", "verl seq-mean-token-sum-norm"}, tti_weight_seq_norm},
    {{"luspo", "1 / responses", "TRL luspo"}, tti_weight_luspo},
    {{"bnpo", "1 / tokens of the micro-batch", "TRL bnpo"}, tti_weight_bnpo},
    {{"token_sum", "1", "verl token-sum"}, tti_weight_one}};

/* ---- [tt:grpo.kl] divergence from the reference ----
 * x = log p_ref - log p of a token; log_ratio = log p - log p_old. Each gives the estimate and its slope by
 * log p. Source: Schulman 2020, http://joschu.net/blog/kl-approx.html */

/* Unbiased, of high variance, may be negative. */
static double tti_kl_k1(double x, double log_ratio, double *slope) {
    (void)log_ratio;
    *slope = 1;
    return -x;
}

/* Biased, of low variance; its gradient is that of the exact KL where p = p_old. */
static double tti_kl_k2(double x, double log_ratio, double *slope) {
    (void)log_ratio;
    *slope = -x;
    return 0.5 * x * x;
}

/* e^x is kept within the range of a float, as TRL's is. */
static double tti_kl_k3(double x, double log_ratio, double *slope) {
    double kept = x < 80 ? x : 80;
    (void)log_ratio;
    *slope = kept == x ? 1 - exp(x) : 0;
    return exp(kept) - kept - 1;
}

/* Bounded on both sides; at a bound the slope is 0. */
static double tti_kl_k3_clamp(double x, double log_ratio, double *slope) {
    double kept = tti_clip(x, -20, 20), kl = exp(kept) - kept - 1;
    (void)log_ratio;
    *slope = kept == x && kl <= 10 ? 1 - exp(x) : 0;
    return kl <= 10 ? kl : 10;
}

/* Weighted by the ratio, the estimate is one under the policy of now; the slope has a part of each factor. */
static double tti_kl_k3_ratio(double x, double log_ratio, double *slope) {
    double kl = tti_kl_k3(x, log_ratio, slope), r = exp(tti_clip(log_ratio, -20, 20));
    *slope = *slope * r + (fabs(log_ratio) <= 20 ? kl * r : 0);
    return kl * r;
}

typedef struct tti_kl_row {
    tt_choice choice;
    double (*kl)(double x, double log_ratio, double *slope);
} tti_kl_row;
static const tti_kl_row tti_kls[] = {   /* in the order of tt_kl_type */
    {{"k3", "e^x - x - 1", "Schulman 2020; TRL, verl kl"}, tti_kl_k3},
    {{"k1", "-x", "Schulman 2020"}, tti_kl_k1},
    {{"k2", "x^2 / 2", "Schulman 2020; verl mse"}, tti_kl_k2},
    {{"k3_clamp", "min(e^x - x - 1, 10), x within +-20", "verl low_var_kl"}, tti_kl_k3_clamp},
    {{"k3_ratio", "r (e^x - x - 1)", "TRL use_bias_correction_kl"}, tti_kl_k3_ratio}
};

/* ---- [tt:grpo.loss] the policy loss of one token ----
 * r = in->ratio, A = in->advantage; dratio is 0 where the exponent was kept within its bounds. */

/* max(-A min(r, delta), -A clip(r, 1 - epsilon_low, 1 + epsilon_high)), for A < 0 at most -A dual_clip.
 * Source: Schulman et al. 2017, arXiv 1707.06347; asymmetric bounds: DAPO, arXiv 2503.14476; delta:
 * INTELLECT-2, arXiv 2505.07291; dual clip: Ye et al. 2019, arXiv 1912.09729. */
static void tti_loss_ppo(const tt_loss_input *in, tt_token_loss *out) {
    const tt_grpo_config *c = in->config;
    double a = in->advantage, r = in->ratio, low = 1 - (double)c->epsilon_low,
           high = 1 + (double)c->epsilon_high;
    int capped = c->delta > 0 && r > (double)c->delta;
    double plain = -a * (capped ? (double)c->delta : r), clipped = -a * tti_clip(r, low, high);
    out->clipped_low = a < 0 && r < low;
    out->clipped_high = a > 0 && r > high;
    out->loss = plain >= clipped ? plain : clipped;
    out->dloss = plain >= clipped && !capped ? -a * in->dratio : 0;
    if (a < 0 && c->dual_clip > 0 && out->loss > -a * (double)c->dual_clip) {
        out->loss = -a * (double)c->dual_clip;
        out->dloss = 0;
        out->clipped_dual = 1;
    }
}

/* -sg(w) A log p: the weight w = clip(r, low, high) passes no gradient, so no token loses its own by the
 * clip. Source: CISPO of MiniMax-M1, arXiv 2506.13585. */
static void tti_loss_weighted_log(const tt_loss_input *in, double low, double high, tt_token_loss *out) {
    double w = tti_clip(in->ratio, low, high);
    out->clipped_low = in->ratio < low;
    out->clipped_high = in->ratio > high;
    out->loss = -w * in->advantage * in->logp;
    out->dloss = -w * in->advantage;
}

/* TRL: bounded above alone. */
static void tti_loss_cispo(const tt_loss_input *in, tt_token_loss *out) {
    tti_loss_weighted_log(in, 0, (double)in->config->cispo_epsilon_max, out);
}

/* verl: both bounds. */
static void tti_loss_cispo_clamp(const tt_loss_input *in, tt_token_loss *out) {
    tti_loss_weighted_log(in, 1 - (double)in->config->epsilon_low, 1 + (double)in->config->epsilon_high, out);
}

/* -A log p. Source: Williams 1992. */
static void tti_loss_reinforce(const tt_loss_input *in, tt_token_loss *out) {
    out->loss = -in->advantage * in->logp;
    out->dloss = -in->advantage;
}

/* GMPO's clip of one log-ratio, on the side where it makes -A r larger; *live: the gradient passes. */
static double tti_gmpo_clip(const tt_grpo_config *c, double log_ratio, double a, int *live) {
    double s = tti_clip(log_ratio, -(double)c->epsilon_low, (double)c->epsilon_high);
    *live = a > 0 ? s >= log_ratio : s <= log_ratio;
    return *live ? log_ratio : s;
}

/* -A r, with the logarithm of r clipped. Source: Zhao et al. 2025, arXiv 2507.20673. */
static void tti_loss_gmpo(const tt_loss_input *in, tt_token_loss *out) {
    double a = in->advantage;
    int live;
    double kept = tti_gmpo_clip(in->config, in->log_ratio, a, &live);
    out->clipped_low = !live && a < 0;
    out->clipped_high = !live && a > 0;
    out->loss = -a * (live ? in->ratio : exp(kept));
    out->dloss = live ? -a * in->dratio : 0;
}

/* What a response pools its log-ratios to, if it has one loss for all of its tokens. */
typedef enum tti_pool { TTI_POOL_NONE = 0, TTI_POOL_MEAN, TTI_POOL_SUM, TTI_POOL_CLIPPED_MEAN } tti_pool;
typedef struct tti_loss_row {
    tt_choice choice;
    tt_token_loss_fn loss;
    float epsilon, dual_clip;    /* what a zero in the config stands for           */
    tti_pool pool;
    double most;                 /* the pooled log-ratio is cut here, its slope 0  */
} tti_loss_row;

static const tti_loss_row tti_losses[] = {   /* in the order of tt_loss_type */
    {{"ppo_clip", "max(-A r, -A clip(r, 1 - epsilon_low, 1 + epsilon_high))",
      "PPO, arXiv 1707.06347; TRL grpo, dapo"},
     tti_loss_ppo, 0.2f, 3, TTI_POOL_NONE, 20},
    {{"cispo", "-sg(min(r, cispo_epsilon_max)) A log p", "MiniMax-M1, arXiv 2506.13585; TRL cispo"},
     tti_loss_cispo, 0.2f, 3, TTI_POOL_NONE, 20},
    {{"cispo_clamp", "-sg(clip(r, 1 - epsilon_low, 1 + epsilon_high)) A log p", "verl cispo"},
     tti_loss_cispo_clamp, 0.2f, 3, TTI_POOL_NONE, 20},
    {{"reinforce", "-A log p", "Williams 1992"}, tti_loss_reinforce, 0.2f, 3, TTI_POOL_NONE, 20},
    {{"gspo", "ppo_clip of exp(mean of log r over the response)",
      "GSPO, arXiv 2507.18071; TRL importance_sampling_level sequence"},
     tti_loss_ppo, 0.2f, 3, TTI_POOL_MEAN, 20},
    {{"gspo_token", "gspo, mean of log r at most 10", "verl gspo"}, tti_loss_ppo, 0.2f, 3, TTI_POOL_MEAN, 10},
    {{"gmpo", "-A exp(mean of log r, each clipped to +-epsilon)", "GMPO, arXiv 2507.20673; verl geo_mean"},
     tti_loss_gmpo, 0.4f, 3, TTI_POOL_CLIPPED_MEAN, 20},
    {{"rloo", "ppo_clip of exp(sum of log r over the response)", "RLOO, arXiv 2402.14740; TRL RLOOTrainer"},
     tti_loss_ppo, 0.2f, 3, TTI_POOL_SUM, 20}};

/* A loss of the config's own is one of single tokens. */
static tti_pool tti_loss_pool(const tt_grpo_config *c) {
    return c->token_loss ? TTI_POOL_NONE : tti_losses[c->loss].pool;
}

static void tti_token_loss_zero(tt_token_loss *out) {
    memset(out, 0, sizeof *out);
    out->factor = 1;
}

/* What a loss may use, at this log-ratio of a token, or pooled. in has config, logp, old_logp, advantage,
 * index. */
static void tti_loss_ratio(tt_loss_input *in, double log_ratio, double most) {
    double kept = tti_clip(log_ratio, -20, most);
    in->user = in->config->token_loss_user;
    in->log_ratio = log_ratio;
    in->ratio = exp(kept);
    in->dratio = kept == log_ratio ? in->ratio : 0;
}

/* A token that the student wrote: the ratio first, which every loss reads, then the function of the loss's
 * row or, in its place, the user's. */
static void tti_loss_student(tt_loss_input *in, double log_ratio, tt_token_loss *out) {
    const tti_loss_row *row = &tti_losses[in->config->loss];
    tti_loss_ratio(in, log_ratio, row->most);
    if (in->config->token_loss) {
        in->config->token_loss(in, out);
    } else {
        row->loss(in, out);
    }
}

/* ---- [tt:grpo.shaping] tokens that the student did not write alone ---- */

/* Advantage-Aware Shaping: gamma falls from gamma_min at advantage_max to gamma_max at advantage_min.
 * Source: ThinkTuning, arXiv 2508.07616, eq. of gamma(A). The released code clamps with lower bound gamma_min
 * and upper bound gamma_max; as gamma_min is the larger one, that gives gamma_max for every A. */
static double tti_aas_gamma(const tt_grpo_config *c, double a) {
    double low = (double)c->gamma_min, high = (double)c->gamma_max;
    double span = (double)c->advantage_max - (double)c->advantage_min;
    double gamma = low + (high - low) * ((double)c->advantage_max - a) / span;
    if (c->aas == TT_AAS_FORMULA && low > high) { return tti_clip(gamma, high, low); }
    if (gamma < low) { gamma = low; }
    return gamma > high ? high : gamma;
}

/* -A p / (p + luffy_gamma), gradient through both; a negative luffy_gamma: -A p. Source: LUFFY, arXiv
 * 2504.14945; the same for refined answers: Critique-GRPO, arXiv 2506.03106. */
static void tti_loss_luffy(const tt_grpo_config *c, double p, double a, tt_token_loss *out) {
    double gamma = (double)c->luffy_gamma;
    out->factor = gamma < 0 ? p : p / (p + gamma);
    out->loss = -a * out->factor;
    out->dloss = gamma < 0 ? out->loss : out->loss * gamma / (p + gamma);
}

/* -A p / d, d = sg(p) + gamma(A) kept inside (0, 1]: d <= 0 becomes p / 1.0001, d > 1 becomes p / 0.9999. A
 * token with A < 0 that is hardly ever said (p < fallback_p) is not pushed down by this: it takes the policy
 * loss. */
static void tti_loss_guided(tt_loss_input *in, tt_token_loss *out) {
    const tt_grpo_config *c = in->config;
    double p = exp(in->logp), a = in->advantage, d;
    if (c->aas == TT_AAS_OFF || (a < 0 && p < (double)c->fallback_p)) {
        out->fallback = c->aas != TT_AAS_OFF;
        tti_loss_student(in, in->logp - in->old_logp, out);
        return;
    }
    if (c->aas == TT_AAS_LUFFY) {
        tti_loss_luffy(c, p, a, out);
        return;
    }
    d = p + tti_aas_gamma(c, a);
    out->factor = d <= 0 ? 1.0001 : d > 1 ? 0.9999 : p / d;
    out->loss = out->dloss = -a * out->factor;
}

static const tt_choice tti_shapings[] = {   /* in the order of tt_aas */
    {"released", "-A p / (sg(p) + gamma_max)", "the code released with ThinkTuning"},
    {"formula", "-A p / (sg(p) + gamma(A))", "ThinkTuning, arXiv 2508.07616"},
    {"luffy", "-A p / (p + luffy_gamma)", "LUFFY, arXiv 2504.14945"},
    {"off", "the policy loss", ""}
};

/* The loss of a token by its kind. */
static void tti_loss_by_kind(tt_loss_input *in, tt_token_kind kind, tt_token_loss *out) {
    tti_token_loss_zero(out);
    switch (kind) {
    case TT_KIND_GUIDED:
    case TT_KIND_TEACHER: tti_loss_guided(in, out); break;
    case TT_KIND_OFF_POLICY:
        tti_loss_ratio(in, in->logp - in->old_logp, 20);
        if (in->config->off_policy_loss) {
            in->config->off_policy_loss(in, out);
        } else {
            tti_loss_luffy(in->config, exp(in->logp), in->advantage, out);
        }
        break;
    case TT_KIND_STUDENT: tti_loss_student(in, in->logp - in->old_logp, out); break;
    case TT_KIND_PROMPT:
    case TT_KIND_ENVIRONMENT: break;
    }
}

/* + beta KL(p, p_ref). */
static void tti_loss_add_kl(const tt_loss_input *in, double ref_logp, tt_token_loss *out) {
    const tt_grpo_config *c = in->config;
    double slope, beta = c->kl_in_reward ? 0 : (double)c->beta;
    out->kl = tti_kls[c->kl].kl(ref_logp - in->logp, in->logp - in->old_logp, &slope);
    out->loss += beta * out->kl;
    out->dloss += beta * slope;
}

/* The whole mathematics of one token, for golden tests and for reading. */
TT_API tt_token_loss tt_grpo_token_loss(const tt_grpo_config *config, double logp, double old_logp,
                                        double ref_logp, double advantage, tt_token_kind kind) {
    tt_grpo_config c = tt_grpo_resolve(config);
    tt_loss_input in = TT_INIT;
    tt_token_loss out;
    in.config = &c;
    in.logp = logp;
    in.old_logp = old_logp;
    in.response_log_ratio = tti_clip(logp - old_logp, -20, 20);
    in.advantage = advantage;
    tti_loss_by_kind(&in, kind, &out);
    if (!isnan(ref_logp)) { tti_loss_add_kl(&in, ref_logp, &out); }
    return out;
}

/* ---- [tt:grpo.mismatch] correction where sampler and trainer disagree ----
 * token: p_old / p_sampler; response: its product over the response; mean: its geometric mean. w: the weight
 * of the policy loss, constant for the gradient. Source: Yao et al. 2025 (truncated importance sampling), TRL
 * and verl. */

typedef struct tti_mismatch_ratio { double token, response, mean, low, high; } tti_mismatch_ratio;

static double tti_zero_outside(double w, double low, double high) { return w >= low && w <= high ? w : 0; }
static double tti_mismatch_off(const tti_mismatch_ratio *m) { (void)m; return 1; }
static double tti_token_truncate(const tti_mismatch_ratio *m) { return tti_clip(m->token, m->low, m->high); }

static double tti_token_mask(const tti_mismatch_ratio *m) {
    return tti_zero_outside(m->token, m->low, m->high);
}

static double tti_seq_truncate(const tti_mismatch_ratio *m) { return tti_clip(m->response, m->low, m->high); }

static double tti_seq_mask(const tti_mismatch_ratio *m) {
    return tti_zero_outside(m->response, m->low, m->high);
}

/* The response is judged as a whole, its tokens keep weights of their own. */
static double tti_geometric_mask(const tti_mismatch_ratio *m) {
    return tti_zero_outside(m->mean, m->low, m->high) > 0 ? m->token : 0;
}

typedef struct tti_mismatch_row {
    tt_choice choice;
    double (*weight)(const tti_mismatch_ratio *);
    float high;
} tti_mismatch_row;

static const tti_mismatch_row tti_mismatches[] = {   /* in the order of tt_mismatch */
    {{"off", "1", ""}, tti_mismatch_off, 3},
    {{"token_truncate", "clip(w, mismatch_low, mismatch_high)", "TRL token_truncate, verl token"},
     tti_token_truncate, 2},
    {{"token_mask", "w, 0 outside the bounds", "TRL token_mask"}, tti_token_mask, 3},
    {{"seq_truncate", "clip(product of w, mismatch_low, mismatch_high)",
      "TRL sequence_truncate, verl sequence"},
     tti_seq_truncate, 2},
    {{"seq_mask", "product of w, 0 outside the bounds", "TRL sequence_mask"}, tti_seq_mask, 3},
    {{"geometric_mask", "w, 0 where the geometric mean is outside the bounds", "OpenRLHF seq-mask-tis"},
     tti_geometric_mask, 3}};

/* ---- [tt:grpo.rewards] the reward of a response ---- */

/* Soft overlong punishment. Source: DAPO, arXiv 2503.14476, eq. 13. */
static double tti_overlong(const tt_grpo_config *c, int length) {
    double over = length - (c->max_completion_length - c->overlong_cache), cost;
    if (c->overlong_cache == 0 || over <= 0) { return 0; }
    cost = over / c->overlong_cache;
    if (c->overlong_factor > 0) { return -cost * (double)c->overlong_factor; }
    return cost > 1 ? -1 : -cost;
}

TT_API double tt_grpo_overlong(const tt_grpo_config *config, int response_length) {
    tt_grpo_config c = tt_grpo_resolve(config);
    return tti_overlong(&c, response_length);
}

/* beta KL(old, reference) of a response: PPO's way to stay near the reference, and REINFORCE++'s. Without
 * log-probs the cost that is known already, as of another process's response, stands. */
static tt_status tti_reward_kl(tt_context *ctx, const tt_grpo_config *c, tt_rollout *r) {
    double slope, sum = 0;
    int t;
    if (!r->old_logprobs && !r->ref_logprobs && !isnan(r->kl_cost)) { return TT_OK; }
    if (!r->old_logprobs || !r->ref_logprobs) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_grpo_advantages: kl_in_reward is 1 but prompt %d, sample %d has no %s_logprobs",
                       r->group, r->sample, r->old_logprobs ? "ref" : "old");
    }
    for (t = 0; t < r->response_length; t++) {
        double old = (double)r->old_logprobs[t];
        if (tti_kind_of(r, t) != TT_KIND_ENVIRONMENT) {
            sum += tti_kls[c->kl].kl((double)r->ref_logprobs[t] - old, 0, &slope);
        }
    }
    r->kl_cost = (double)c->beta * sum;
    return TT_OK;
}

/* reward = sum of weight * rewards, less what length and KL cost; NaN if all abstain. */
static tt_status tti_reward_sum(tt_rollouts *all, tt_rollout *r, const tt_grpo_config *c,
                                const float *weights, tt_grpo_metrics *m) {
    int with_kl = c->kl_in_reward && c->beta > 0, scored = 0, k;
    tt_status status = with_kl ? tti_reward_kl(all->ctx, c, r) : TT_OK;
    double sum = 0, overlong = tti_overlong(c, r->response_length), kl = with_kl ? r->kl_cost : 0;
    if (status != TT_OK) { return status; }
    for (k = 0; k < all->n_rewards; k++) {
        if (isnan(r->rewards[k])) { continue; }
        sum += (double)r->rewards[k] * (weights ? (double)weights[k] : 1.0);
        scored = 1;
    }
    r->reward = scored ? (float)(sum + overlong - kl) : (float)NAN;
    if (scored && !isfinite(r->reward)) {
        return tt_fail(all->ctx, TT_ERR_NUMBER,
                       "reward of prompt %d, sample %d is %g, expected a finite number", r->group, r->sample,
                       (double)r->reward);
    }
    m->overlong += overlong / all->n;
    m->reward_kl += kl / all->n;
    m->n_unscored += !scored;
    return TT_OK;
}

/* Rewards of all responses; the means of what length and KL cost go to the metrics. */
static tt_status tti_rewards_sum(tt_rollouts *all, const tt_grpo_config *c, const float *weights,
                                 tt_grpo_metrics *m) {
    tt_status status = TT_OK;
    int i;
    if (all->n_rewards < 1 || all->n_rewards > TT_MAX_REWARDS) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_grpo_advantages: n_rewards is %d, expected 1..%d",
                       all->n_rewards, TT_MAX_REWARDS);
    }
    m->overlong = m->reward_kl = m->n_unscored = 0;
    for (i = 0; i < all->n && status == TT_OK; i++) {
        status = tti_reward_sum(all, &all->items[i], c, weights, m);
    }
    return status;
}

TT_API tt_status tt_grpo_rewards(tt_rollouts *all, const tt_grpo_config *config, const float *reward_weights,
                                 tt_grpo_metrics *metrics) {
    tt_grpo_config c = tt_grpo_resolve(config);
    tt_grpo_metrics ignored = TT_INIT;
    return tti_rewards_sum(all, &c, reward_weights, metrics ? metrics : &ignored);
}

/* Reward number k, or with k = TTI_TOTAL the sum. */
enum { TTI_TOTAL = -1 };

static double tti_reward_of(const tt_rollout *r, int k) {
    return (double)(k == TTI_TOTAL ? r->reward : r->rewards[k]);
}

/* Statistics of reward k over those of n responses that have one; with on_policy over the student's own. */
static tt_reward_stats tti_reward_stats(const tt_rollout *r, int n, int k, int biased, int on_policy) {
    tt_reward_stats s = TT_INIT;
    double sum = 0, first = 0;
    int i;
    s.equal = 1;
    for (i = 0; i < n; i++) {
        double x = tti_reward_of(&r[i], k);
        if (isnan(x) || (on_policy && r[i].off_policy)) { continue; }
        if (s.n++ == 0) { first = x; }
        s.equal = s.equal && x == first;
        s.mean += x;
    }
    if (s.n > 0) { s.mean /= s.n; }
    for (i = 0; i < n; i++) {
        double x = tti_reward_of(&r[i], k);
        if (!isnan(x) && !(on_policy && r[i].off_policy)) { sum += (x - s.mean) * (x - s.mean); }
    }
    s.std = s.n > 1 ? sqrt(sum / (biased ? s.n : s.n - 1)) : 0;
    return s;
}

static tt_rollout *tti_group_of(const tt_rollouts *all, int group) {
    return all->items + (size_t)group * (size_t)all->num_generations;
}

TT_API tt_reward_stats tt_group_rewards(const tt_rollouts *all, int group) {
    return tti_reward_stats(tti_group_of(all, group), all->num_generations, TTI_TOTAL, 0, 0);
}

/* ---- [tt:grpo.advantages] advantages ----
 * A group and what its rule may use; batch_*: of the whole batch. */

typedef struct tti_group {
    tt_rollout *r;
    int n;
    const tt_grpo_config *config;
    tt_reward_stats stats;
    double scale;              /* of scale_rewards                   */
    double batch_std;
    double batch_nonzero;      /* share of rewards that are not 0    */
} tti_group;

/* (reward - baseline) / scale for all who have a reward, 0 for the others. */
static void tti_advantage_set(const tti_group *g, double baseline, double scale) {
    int i;
    for (i = 0; i < g->n; i++) {
        tt_rollout *r = &g->r[i];
        r->advantage = isnan(r->reward) ? 0.0f : (float)(((double)r->reward - baseline) / scale);
    }
}

/* Source: arXiv 2402.03300, eq. 4.1; without the scale arXiv 2503.20783. */
static void tti_advantage_grpo(const tti_group *g) {
    tti_advantage_set(g, g->stats.mean, g->scale);
}

/* R - mean of the others = (R - mean) n / (n - 1). */
static void tti_advantage_rloo(const tti_group *g) {
    tti_advantage_set(g, g->stats.mean, (double)(g->stats.n - 1) / g->stats.n);
}

/* The baseline of least variance if a gradient's size grows with the length. */
static void tti_advantage_opo(const tti_group *g) {
    double weight = 0, weighted = 0;
    int i;
    for (i = 0; i < g->n; i++) {
        if (isnan(g->r[i].reward)) { continue; }
        weight += g->r[i].response_length;
        weighted += (double)g->r[i].response_length * (double)g->r[i].reward;
    }
    tti_advantage_set(g, weighted / weight, 1);
}

/* Of equals the first is the best. */
static void tti_advantage_passk(const tti_group *g) {
    tt_rollout *r = g->r;
    int best = -1, second = -1, i;
    for (i = 0; i < g->n; i++) {
        r[i].advantage = 0;
        if (!isnan(r[i].reward) && (best < 0 || r[i].reward > r[best].reward)) { best = i; }
    }
    for (i = 0; i < g->n; i++) {
        if (i != best && !isnan(r[i].reward) && (second < 0 || r[i].reward > r[second].reward)) {
            second = i;
        }
    }
    if (second >= 0) {
        r[best].advantage = (float)(((double)r[best].reward - (double)r[second].reward) / g->scale);
    }
}

static void tti_advantage_mean(const tti_group *g) {
    tti_advantage_set(g, g->stats.mean, 1);
}

/* Groups without signal would dilute the mean: the scale is the share of responses that earn anything. */
static void tti_advantage_gpg(const tti_group *g) {
    tti_advantage_set(g, g->stats.mean, g->batch_nonzero);
}

static void tti_advantage_plain(const tti_group *g) {
    tti_advantage_set(g, 0, 1);
}

/* LUFFY's grpo_split: one on-policy response has mean 0 and std 1, equal ones have std 1. */
static void tti_advantage_luffy(const tti_group *g) {
    const tt_grpo_config *c = g->config;
    tt_reward_stats s = tti_reward_stats(g->r, g->n, TTI_TOTAL, c->biased_std, 1);
    double scale = (s.n > 1 && !s.equal ? s.std : 1) + (double)c->advantage_eps;
    tti_advantage_set(g, s.n > 1 ? s.mean : 0, c->scale_rewards == TT_SCALE_NONE ? 1 : scale);
}

/* Whitened over all tokens of the batch: unbiased variance and 1e-8 inside the root (verl), biased and at
 * least 1e-8 (OpenRLHF). Source: REINFORCE++, arXiv 2501.03262. */
static void tti_advantage_whiten(tt_rollouts *all, const tt_grpo_config *c, const float *weights) {
    double tokens = 0, mean = 0, variance = 0, root;
    int i;
    (void)weights;
    for (i = 0; i < all->n; i++) {
        int n = tti_loss_tokens(&all->items[i], c);
        tokens += n;
        mean += n * (double)all->items[i].advantage;
    }
    if (tokens == 0) { return; }
    mean /= tokens;
    for (i = 0; i < all->n; i++) {
        double d = (double)all->items[i].advantage - mean;
        variance += tti_loss_tokens(&all->items[i], c) * d * d;
    }
    variance /= tokens > 1 && !c->biased_std ? tokens - 1 : tokens;
    root = c->biased_std ? sqrt(variance > 1e-8 ? variance : 1e-8) : sqrt(variance + 1e-8);
    for (i = 0; i < all->n; i++) {
        tt_rollout *r = &all->items[i];
        if (!isnan(r->reward)) { r->advantage = (float)(((double)r->advantage - mean) / root); }
    }
}

/* Adds weight * (R_k - mean) / std of one reward of one group. */
static void tti_gdpo_add(tt_rollout *r, int n, int k, double weight, const tt_grpo_config *c) {
    tt_reward_stats s = tti_reward_stats(r, n, k, c->biased_std, 0);
    int i;
    for (i = 0; i < n && !s.equal; i++) {
        double x = (double)r[i].rewards[k];
        if (!isnan(x)) {
            r[i].advantage += (float)(weight * (x - s.mean) / (s.std + (double)c->advantage_eps));
        }
    }
}

/* Each reward is normalised in its group, their weighted sum over the batch: TRL's normalize_then_sum.
 * Source: GDPO, arXiv 2601.05242. */
static void tti_advantage_gdpo(tt_rollouts *all, const tt_grpo_config *c, const float *weights) {
    int scored = 0, k, g, i;
    double mean = 0, variance = 0;
    for (i = 0; i < all->n; i++) { all->items[i].advantage = 0; }
    for (g = 0; g < all->n_groups; g++) {
        for (k = 0; k < all->n_rewards; k++) {
            tti_gdpo_add(tti_group_of(all, g), all->num_generations, k, weights ? (double)weights[k] : 1, c);
        }
    }
    for (i = 0; i < all->n; i++) {
        scored += !isnan(all->items[i].reward);
        mean += (double)all->items[i].advantage;
    }
    mean /= scored > 0 ? scored : 1;
    for (i = 0; i < all->n; i++) {
        double d = (double)all->items[i].advantage - mean;
        variance += isnan(all->items[i].reward) ? 0 : d * d;
    }
    variance /= scored > 1 && !c->biased_std ? scored - 1 : scored > 0 ? scored : 1;
    for (i = 0; i < all->n; i++) {
        tt_rollout *r = &all->items[i];
        double d = (double)r->advantage - mean;
        r->advantage = variance > 0 && !isnan(r->reward)
                           ? (float)(d / (sqrt(variance) + (double)c->advantage_eps))
                           : 0.0f;
    }
}

typedef struct tti_advantage_row {
    tt_choice choice;
    void (*group)(const tti_group *); /* NULL: `batch` does it all */
    int equal_too;                    /* also where all rewards are equal */
    /* after the groups; NULL = nothing */
    void (*batch)(tt_rollouts *, const tt_grpo_config *, const float *weights);
} tti_advantage_row;

static const tti_advantage_row tti_advantages[] = {   /* in the order of tt_advantage_type */
    {{"grpo", "(R - mean) / (std + eps)", "arXiv 2402.03300; unscaled Dr.GRPO, arXiv 2503.20783"},
     tti_advantage_grpo, 0, NULL},
    {{"rloo", "R - mean of the others", "arXiv 2402.14740"}, tti_advantage_rloo, 0, NULL},
    {{"opo", "R - sum(n R) / sum(n), n: response length", "arXiv 2505.23585; verl opo"},
     tti_advantage_opo, 0, NULL},
    {{"passk", "best: (best - second) / (std + eps), others: 0", "arXiv 2503.19595; verl grpo_passk"},
     tti_advantage_passk, 0, NULL},
    {{"reinforce_pp_baseline", "whitened(R - mean)", "arXiv 2501.03262"},
     tti_advantage_mean, 0, tti_advantage_whiten},
    {{"gpg", "(R - mean) responses / responses with R != 0", "arXiv 2504.02546; verl gpg"},
     tti_advantage_gpg, 0, NULL},
    {{"reinforce_pp", "whitened(R)", "arXiv 2501.03262"}, tti_advantage_plain, 1, tti_advantage_whiten},
    {{"gdpo", "standardised sum of weight (R_k - mean) / std", "arXiv 2601.05242; TRL normalize_then_sum"},
     NULL, 0, tti_advantage_gdpo},
    {{"luffy", "grpo, mean and std of the on-policy responses", "arXiv 2504.14945"},
     tti_advantage_luffy, 1, NULL}};

/* Advantages of one group; batch has the values of the whole batch. */
static void tti_advantage_group(tt_rollout *r, int n, const tt_grpo_config *c, const tti_group *batch) {
    const tti_advantage_row *row = &tti_advantages[c->advantage];
    tti_group g = *batch;
    double eps = (double)c->advantage_eps;
    int i;
    g.r = r;
    g.n = n;
    g.config = c;
    g.stats = tti_reward_stats(r, n, TTI_TOTAL, c->biased_std, 0);
    g.scale = c->scale_rewards == TT_SCALE_GROUP   ? g.stats.std + eps
              : c->scale_rewards == TT_SCALE_BATCH ? g.batch_std + eps
                                                   : 1;
    if (n == 1 && c->keep_single && c->advantage == TT_ADV_GRPO) {
        tti_advantage_set(&g, 0, 1 + eps);
    } else if (g.stats.equal && !row->equal_too) {
        for (i = 0; i < n; i++) { r[i].advantage = 0; }
    } else {
        row->group(&g);
    }
}

/* frac_reward_zero_std: groups whose rewards are all equal, which teach nothing. */
static void tti_advantage_measure(const tt_rollouts *all, const tt_grpo_config *c, tt_grpo_metrics *m) {
    int g, k;
    m->reward_std = m->frac_reward_zero_std = 0;
    for (g = 0; g < all->n_groups; g++) {
        tt_reward_stats s =
            tti_reward_stats(tti_group_of(all, g), all->num_generations, TTI_TOTAL, c->biased_std, 0);
        m->frac_reward_zero_std += s.equal / (double)all->n_groups;
        m->reward_std += s.equal ? 0 : s.std / all->n_groups;
    }
    m->reward = tti_reward_stats(all->items, all->n, TTI_TOTAL, 0, 0).mean;
    for (k = 0; k < all->n_rewards; k++) {
        m->rewards[k] = tti_reward_stats(all->items, all->n, k, 0, 0).mean;
    }
}

/* Group by group, then what the rule does with the whole batch. */
TT_API tt_status tt_grpo_advantages(tt_rollouts *all, const tt_grpo_config *config,
                                    const float *reward_weights, tt_grpo_metrics *metrics) {
    tt_grpo_config c = tt_grpo_resolve(config);
    const tti_advantage_row *row;
    tt_grpo_metrics ignored = TT_INIT;
    tti_group batch;
    tt_status status;
    int i;
    memset(&batch, 0, sizeof batch);
    if (!metrics) { metrics = &ignored; }
    if (all->n < 1) {
        return tt_fail(all->ctx, TT_ERR_ARG, "tt_grpo_advantages: number of rollouts is %d, expected >= 1",
                       all->n);
    }
    if (c.advantage == TT_ADV_RLOO && all->num_generations < 2) {
        return tt_fail(all->ctx, TT_ERR_ARG,
                       "tt_grpo_advantages: num_generations is %d, expected >= 2 for RLOO",
                       all->num_generations);
    }
    status = tt_grpo_check(all->ctx, &c);
    if (status == TT_OK) { status = tti_rewards_sum(all, &c, reward_weights, metrics); }
    if (status != TT_OK) { return status; }
    row = &tti_advantages[c.advantage];
    batch.batch_std = tti_reward_stats(all->items, all->n, TTI_TOTAL, c.biased_std, 0).std;
    for (i = 0; i < all->n; i++) {
        batch.batch_nonzero += (!isnan(all->items[i].reward) && all->items[i].reward != 0) / (double)all->n;
    }
    for (i = 0; i < all->n_groups && row->group; i++) {
        tti_advantage_group(tti_group_of(all, i), all->num_generations, &c, &batch);
    }
    if (row->batch) { row->batch(all, &c, reward_weights); }
    tti_advantage_measure(all, &c, metrics);
    return TT_OK;
}

/* ---- [tt:grpo.config] defaults, ranges, choices by name ---- */

/* One row for each field: what a zero stands for, and its range. whole: the field is an int (or an enum). */
typedef struct tti_grpo_field {
    const char *name;
    size_t at;
    int whole;
    double zero, low, high;
} tti_grpo_field;
#define TTI_INT(field) #field, offsetof(tt_grpo_config, field), 1
#define TTI_FLOAT(field) #field, offsetof(tt_grpo_config, field), 0
#define TTI_LAST(table) (sizeof(table) / sizeof *(table) - 1)
static const tti_grpo_field tti_grpo_fields[] = {
    {TTI_INT(advantage), 0, 0, TTI_LAST(tti_advantages)},
    {TTI_INT(scale_rewards), 0, 0, TT_SCALE_NONE},
    {TTI_INT(loss), 0, 0, TTI_LAST(tti_losses)},
    {TTI_INT(aggregation), 0, 0, TTI_LAST(tti_aggregations)},
    {TTI_INT(kl), 0, 0, TTI_LAST(tti_kls)},
    {TTI_INT(mismatch), 0, 0, TTI_LAST(tti_mismatches)},
    {TTI_INT(aas), 0, 0, TTI_LAST(tti_shapings)},
    {TTI_INT(num_generations), 8, 1, INT_MAX},
    {TTI_INT(max_completion_length), 128, 1, INT_MAX},
    {TTI_FLOAT(temperature), 1, 1e-6, 1e6},
    {TTI_INT(top_k), 0, 0, INT_MAX},
    {TTI_FLOAT(top_p), 1, 0, 1},
    {TTI_FLOAT(min_p), 0, 0, 1},
    {TTI_FLOAT(epsilon_low), 0, 0, 20},
    {TTI_FLOAT(epsilon_high), 0, 0, HUGE_VAL},
    {TTI_FLOAT(delta), 0, 0, HUGE_VAL},
    {TTI_FLOAT(beta), 0, 0, 1e6},
    {TTI_FLOAT(entropy_coef), 0, -1e6, 1e6},
    {TTI_FLOAT(cispo_epsilon_max), 5, 0, HUGE_VAL},
    {TTI_FLOAT(top_entropy_quantile), 1, 0, 1},
    {TTI_FLOAT(advantage_eps), 1e-6, 0, 1e6},
    {TTI_INT(overlong_cache), 0, 0, INT_MAX},
    {TTI_FLOAT(overlong_factor), 0, 0, 1e6},
    {TTI_FLOAT(mismatch_low), 0, 0, HUGE_VAL},
    {TTI_FLOAT(luffy_gamma), 0.1, -HUGE_VAL, HUGE_VAL},
    {TTI_FLOAT(fallback_p), 0.01, -HUGE_VAL, HUGE_VAL},
    {TTI_INT(dynamic_sampling), 0, 0, 1000},
    {TTI_INT(num_iterations), 0, 0, 1000000},
    {TTI_INT(num_mini_batches), 0, 0, 1000000},
    {TTI_INT(share_prompts), 0, 0, 1}
};
enum { TTI_N_GRPO_FIELDS = (int)(sizeof tti_grpo_fields / sizeof *tti_grpo_fields) };

/* Enums are stored as ints here, so both are read through memcpy. */
static double tti_grpo_get(const tt_grpo_config *c, const tti_grpo_field *f) {
    const void *at = (const char *)c + f->at;
    int whole = 0;
    float number = 0;
    if (f->whole) {
        memcpy(&whole, at, sizeof whole);
        return whole;
    }
    memcpy(&number, at, sizeof number);
    return (double)number;
}

/* The table knows a field's offset and whether it is whole, so it is written byte by byte. */
static void tti_grpo_set(tt_grpo_config *c, const tti_grpo_field *f, double value) {
    void *at = (char *)c + f->at;
    int whole = (int)value;
    float number = (float)value;
    if (f->whole) {
        memcpy(at, &whole, sizeof whole);
    } else {
        memcpy(at, &number, sizeof number);
    }
}

/* Zeros become defaults: by the table, then those that depend on the chosen loss and correction. */
TT_API tt_grpo_config tt_grpo_resolve(const tt_grpo_config *in) {
    tt_grpo_config c = *in;
    int loss = c.loss >= 0 && (size_t)c.loss <= TTI_LAST(tti_losses) ? (int)c.loss : 0;
    int mismatch = c.mismatch >= 0 && (size_t)c.mismatch <= TTI_LAST(tti_mismatches) ? (int)c.mismatch : 0;
    int k;
    for (k = 0; k < TTI_N_GRPO_FIELDS; k++) {
        const tti_grpo_field *f = &tti_grpo_fields[k];
        if (f->zero != 0 && tti_grpo_get(&c, f) == 0) { tti_grpo_set(&c, f, f->zero); }
    }
    if (c.epsilon_low == 0) { c.epsilon_low = tti_losses[loss].epsilon; }
    if (c.epsilon_high == 0) { c.epsilon_high = tti_losses[loss].epsilon; }
    if (c.dual_clip == 0) { c.dual_clip = tti_losses[loss].dual_clip; }
    if (c.mismatch_high == 0) { c.mismatch_high = tti_mismatches[mismatch].high; }
    if (c.gamma_min == 0 && c.gamma_max == 0 && c.advantage_min == 0 && c.advantage_max == 0) {
        c.gamma_min = 0.001f;
        c.gamma_max = -0.001f;
        c.advantage_min = -4;
        c.advantage_max = 4;
    }
    return c;
}

static tt_status tti_grpo_range(tt_context *ctx, const char *name, double value, double low, double high) {
    if (value >= low && value <= high) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "grpo: %s is %g, expected %g .. %g", name, value, low, high);
}

/* By the table, then what one field says of another. */
TT_API tt_status tt_grpo_check(tt_context *ctx, const tt_grpo_config *config) {
    tt_grpo_config c = tt_grpo_resolve(config);
    tt_status status = TT_OK;
    int k;
    for (k = 0; k < TTI_N_GRPO_FIELDS && status == TT_OK; k++) {
        const tti_grpo_field *f = &tti_grpo_fields[k];
        status = tti_grpo_range(ctx, f->name, tti_grpo_get(&c, f), f->low, f->high);
    }
    if (status == TT_OK && c.loss != TT_LOSS_GMPO) {
        status = tti_grpo_range(ctx, "epsilon_low", (double)c.epsilon_low, 0, 1);
    }
    if (status == TT_OK) {
        status = tti_grpo_range(ctx, "overlong_cache", c.overlong_cache, 0, c.max_completion_length);
    }
    if (status == TT_OK) {
        status = tti_grpo_range(ctx, "mismatch_low", (double)c.mismatch_low, 0, (double)c.mismatch_high);
    }
    return status;
}

typedef struct tti_choices { const char *field; const void *rows; size_t row_bytes, n; } tti_choices;
#define TTI_CHOICES(field, table) {field, table, sizeof *(table), sizeof(table) / sizeof *(table)}

/* A row of any table begins with its tt_choice. */
TT_API const tt_choice *tt_grpo_choice(const char *field, int value) {
    static const tti_choices all[] = {
        TTI_CHOICES("advantage", tti_advantages), TTI_CHOICES("loss", tti_losses),
        TTI_CHOICES("aggregation", tti_aggregations), TTI_CHOICES("kl", tti_kls),
        TTI_CHOICES("mismatch", tti_mismatches), TTI_CHOICES("aas", tti_shapings)
    };
    size_t k;
    for (k = 0; k < sizeof all / sizeof *all; k++) {
        if (strcmp(all[k].field, field) != 0) { continue; }
        if (value < 0 || (size_t)value >= all[k].n) { return NULL; }
        /* its first member */
        return (const tt_choice *)((const char *)all[k].rows + (size_t)value * all[k].row_bytes);
    }
    return NULL;
}

TT_API tt_status tt_grpo_choose(tt_context *ctx, const char *field, const char *name, int *value) {
    char known[256];
    size_t size = 0;
    const tt_choice *choice;
    int k;
    for (k = 0; (choice = tt_grpo_choice(field, k)) != NULL; k++) {
        if (strcmp(choice->name, name) == 0) {
            *value = k;
            return TT_OK;
        }
    }
    known[0] = 0;
    for (k = 0; (choice = tt_grpo_choice(field, k)) != NULL && size < sizeof known - 32; k++) {
        size += (size_t)snprintf(known + size, sizeof known - size, "%s%s", k ? ", " : "", choice->name);
    }
    return tt_fail(ctx, TT_ERR_ARG, "grpo: %s is \"%.64s\", expected one of %s", field, name, known);
}

/* ---- [tt:grpo.batch] the loss of a batch ---- */

typedef struct tti_batch_loss {       /* lives in the step's arena until backward                     */
    int n;                            /* response tokens                                              */
    float *logprobs, *entropy;        /* host values; entropy NULL if not given                       */
    float *dlogprobs, *dentropy;      /* slopes of the loss                                           */
    double least_entropy;             /* from which on a token has a policy loss; see top_entropy_quantile */
    double loss;
} tti_batch_loss;

/* What the tokens of a response share. */
typedef struct tti_response_sums {
    double log_ratio;        /* sum of log r over its n student tokens; GMPO: of the clipped ones */
    double log_ratio_kept;   /* the same, each within +-20 */
    double log_mismatch;     /* sum of log p_old - log p_sampler over the n_sampled tokens of the sampler */
    double gap;              /* sum of log p_sampler - log p over the same */
    double policy;           /* 1, or 0 if the response leaves the policy loss */
    double slope;            /* a pooled loss: sum over its tokens of weight * slope by each one's log p */
    int n, n_sampled;
} tti_response_sums;

/* Log-probs of one token, its entropy, and whether that is large enough for the policy loss (1 or 0). */
typedef struct tti_token_logps {
    double now, old, sampler, reference, entropy, kept;
    size_t index;
} tti_token_logps;

/* Token t of a response whose values begin at `at`. old: at the rollout, or that of now if there is none. */
static tti_token_logps tti_token_logps_at(const tt_rollout *r, const tti_batch_loss *b, size_t at, int t) {
    tti_token_logps p;
    p.index = at + (size_t)t;
    p.now = (double)b->logprobs[p.index];
    p.entropy = b->entropy ? (double)b->entropy[p.index] : 0;
    p.kept = p.entropy >= b->least_entropy;
    p.old = r->old_logprobs ? (double)r->old_logprobs[t] : p.now;
    p.sampler = (double)r->sampling_logprobs[t];
    p.reference = r->ref_logprobs ? (double)r->ref_logprobs[t] : (double)NAN;
    return p;
}

/* In logarithms kept within +-20, as TRL and verl do: e^20 is weight enough. */
static double tti_mismatch_weight(const tt_grpo_config *c, const tti_response_sums *q,
                                  const tti_token_logps *p) {
    tti_mismatch_ratio m;
    m.token = isnan(p->sampler) ? 1 : exp(tti_clip(p->old - p->sampler, -20, 20));
    m.response = exp(tti_clip(q->log_mismatch, -20, 20));
    m.mean = exp(q->log_mismatch / (q->n_sampled + 1e-8));
    m.low = (double)c->mismatch_low;
    m.high = (double)c->mismatch_high;
    return tti_mismatches[c->mismatch].weight(&m);
}

static tt_loss_input tti_loss_input_of(const tt_grpo_config *c, const tt_rollout *r, int t,
                                       const tti_token_logps *p, const tti_response_sums *q) {
    tt_loss_input in = TT_INIT;
    in.config = c;
    in.logp = p->now;
    in.old_logp = p->old;
    in.response_log_ratio = q->log_ratio_kept;
    in.advantage = tti_advantage_at(r, t);
    in.rollout = r;
    in.index = p->index;
    return in;
}

/* A loss of the whole response, of its pooled log-ratio, at advantage a; its slope is by each student token's
 * log p. */
static tt_token_loss tti_pooled_loss(const tt_grpo_config *c, double a, const tti_response_sums *q) {
    tti_pool pool = tti_loss_pool(c);
    double n = pool == TTI_POOL_SUM ? 1 : pool == TTI_POOL_CLIPPED_MEAN ? q->n + 1e-8 : q->n;
    tt_loss_input in = TT_INIT;
    tt_token_loss x;
    in.config = c;
    in.advantage = a;
    tti_token_loss_zero(&x);
    tti_loss_student(&in, q->log_ratio / n, &x);
    x.dloss /= n;
    return x;
}

/* Only tokens that the sampler drew tell of a mismatch; only the student's own move the ratio. */
static void tti_sums_add(tti_response_sums *q, const tt_grpo_config *c, const tt_rollout *r, int t,
                         const tti_token_logps *p) {
    double log_ratio = p->now - p->old;
    int live;
    if (!isnan(p->sampler)) {
        q->log_mismatch += p->old - p->sampler;
        q->gap += p->sampler - p->now;
        q->n_sampled++;
    }
    if (!tti_is_student(r, t)) { return; }
    q->log_ratio_kept += tti_clip(log_ratio, -20, 20);
    q->log_ratio += tti_loss_pool(c) == TTI_POOL_CLIPPED_MEAN
                        ? tti_gmpo_clip(c, log_ratio, tti_advantage_at(r, t), &live)
                        : log_ratio;
    q->n++;
}

/* First the sums over the response, for the weight of a token may depend on all of them; then, for a pooled
 * loss, the slope that all its tokens share. */
static tti_response_sums tti_response_read(const tt_rollout *r, const tti_batch_loss *b, size_t at,
                                           const tt_grpo_config *c) {
    double threshold = (double)c->off_policy_mask_threshold, weights = 0;
    tti_response_sums q;
    int t;
    memset(&q, 0, sizeof q);
    for (t = 0; t < r->response_length; t++) {
        tti_token_logps p = tti_token_logps_at(r, b, at, t);
        if (tti_in_loss(r, t, c)) { tti_sums_add(&q, c, r, t, &p); }
    }
    q.policy =
        threshold != 0 && r->advantage < 0 && q.n_sampled > 0 && q.gap / q.n_sampled > threshold ? 0 : 1;
    if (tti_loss_pool(c) == TTI_POOL_NONE || q.n == 0) { return q; }
    for (t = 0; t < r->response_length; t++) {
        tti_token_logps p = tti_token_logps_at(r, b, at, t);
        double w = tti_mismatch_weight(c, &q, &p) * p.kept;
        if (!tti_in_loss(r, t, c) || !tti_is_student(r, t)) { continue; }
        weights += w;
        if (r->advantages) { q.slope += w * tti_pooled_loss(c, tti_advantage_at(r, t), &q).dloss; }
    }
    if (!r->advantages) { q.slope = tti_pooled_loss(c, (double)r->advantage, &q).dloss * weights; }
    return q;
}

/* The pooled loss as the loss of one of its tokens: each of them moves the ratio that all of them use. */
static tt_token_loss tti_pooled_at(const tt_grpo_config *c, double a, const tti_token_logps *p,
                                   const tti_response_sums *q, double weight) {
    tt_token_loss x = tti_pooled_loss(c, a, q);
    int live = 1;
    if (tti_loss_pool(c) == TTI_POOL_CLIPPED_MEAN) { tti_gmpo_clip(c, p->now - p->old, a, &live); }
    x.clipped_low |= !live && a < 0;
    x.clipped_high |= !live && a > 0;
    x.loss *= weight * p->kept;
    x.dloss = live ? q->slope * q->policy : 0;
    return x;
}

/* Loss of token t; *weight receives its mismatch weight. */
static tt_token_loss tti_loss_at(const tt_grpo_config *c, const tt_rollout *r, int t,
                                 const tti_response_sums *q, const tti_token_logps *p, double *weight) {
    tt_loss_input in = tti_loss_input_of(c, r, t, p, q);
    tt_token_loss x;
    *weight = tti_mismatch_weight(c, q, p) * q->policy;
    if (tti_is_student(r, t) && tti_loss_pool(c) != TTI_POOL_NONE) {
        x = tti_pooled_at(c, in.advantage, p, q, *weight);
    } else {
        tti_loss_by_kind(&in, tti_kind_of(r, t), &x);
        x.loss *= *weight * p->kept;
        x.dloss *= *weight * p->kept;
    }
    if (!isnan(p->reference)) { tti_loss_add_kl(&in, p->reference, &x); }
    return x;
}

/* Means over the tokens in the loss; maxima as they come. The guided ones have their own denominator. */
static void tti_loss_measure(tt_grpo_metrics *m, const tt_loss_totals *d, int guided,
                             const tti_token_logps *p, const tt_token_loss *x, double weight) {
    double log_ratio = isnan(p->sampler) ? 0 : p->old - p->sampler, gap = fabs(log_ratio);
    double ratio = exp(tti_clip(log_ratio, -20, 20));
    m->entropy += p->entropy / d->tokens;
    m->kl += x->kl / d->tokens;
    m->ppo_kl += (p->old - p->now) / d->tokens;
    m->clip_low += x->clipped_low / d->tokens;
    m->clip_high += x->clipped_high / d->tokens;
    m->clip_dual += x->clipped_dual / d->tokens;
    m->mismatch_mean += weight / d->tokens;
    m->ratio_mean += ratio / d->tokens;
    m->ratio_outside += (ratio < 0.9 || ratio > 1.1) / d->tokens;
    if (ratio > m->ratio_max) { m->ratio_max = ratio; }
    if (ratio < m->ratio_min || m->n_tokens == 0) { m->ratio_min = ratio; }
    m->n_tokens += 1;
    if (gap > m->sampling_logp_difference_max) { m->sampling_logp_difference_max = gap; }
    if (fabs(weight - 1) > m->mismatch_deviation_max) { m->mismatch_deviation_max = fabs(weight - 1); }
    if (!guided) { return; }
    m->n_guided_tokens += 1;
    m->aas_fallback_share += x->fallback / d->guided;
    m->aas_factor_mean += x->factor / d->guided;
    if (x->factor > m->aas_factor_max) { m->aas_factor_max = x->factor; }
}

static int tti_ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* The (1 - top_entropy_quantile) quantile of the entropies of the tokens in the loss, linear between
 * neighbours. */
static tt_status tti_entropy_quantile(tt_context *ctx, tti_batch_loss *b, const tt_loss_batch *batch,
                                      const tt_grpo_config *c) {
    size_t count = 0, at = 0, below;
    float *sorted;
    double place;
    int i, t;
    b->least_entropy = -HUGE_VAL;
    if (c->top_entropy_quantile >= 1) { return TT_OK; }
    sorted = (float *)tt_alloc(ctx, (size_t)b->n, sizeof *sorted);
    if (!sorted) { return TT_ERR_MEM; }
    for (i = 0; i < tti_batch_size(batch); i++) {
        const tt_rollout *r = tti_batch_at(batch, i);
        for (t = 0; t < r->response_length; t++, at++) {
            if (tti_in_loss(r, t, c)) { sorted[count++] = b->entropy[at]; }
        }
    }
    qsort(sorted, count, sizeof *sorted, tti_ascending);
    place = count > 0 ? (1 - (double)c->top_entropy_quantile) * (double)(count - 1) : 0;
    below = (size_t)place;
    if (count > 0) { b->least_entropy = (double)sorted[below]; }
    if (below + 1 < count) {
        b->least_entropy += (place - (double)below) * ((double)sorted[below + 1] - (double)sorted[below]);
    }
    tt_free(ctx, sorted, (size_t)b->n, sizeof *sorted);
    return TT_OK;
}

/* Loss and slopes of one rollout whose values begin at `at`. */
static void tti_rollout_loss(tti_batch_loss *b, size_t at, const tt_rollout *r, const tt_grpo_config *c,
                             const tti_denominators *d, tt_grpo_metrics *m) {
    int n = tti_loss_tokens(r, c), t;
    double w = n > 0 ? tti_aggregations[c->aggregation].weight(d, n) : 0;
    tti_response_sums sums = tti_response_read(r, b, at, c);
    for (t = 0; t < r->response_length; t++) {
        tti_token_logps p = tti_token_logps_at(r, b, at, t);
        double bonus = (double)c->entropy_coef * p.kept, weight;
        tt_token_loss x;
        if (!tti_in_loss(r, t, c)) { continue; }
        x = tti_loss_at(c, r, t, &sums, &p, &weight);
        b->loss += w * (x.loss - bonus * p.entropy);
        b->dlogprobs[p.index] += (float)(w * x.dloss);
        if (b->dentropy) { b->dentropy[p.index] = (float)(-w * bonus); }
        if (m) { tti_loss_measure(m, &d->of, !tti_is_student(r, t), &p, &x, weight); }
    }
}

/* Denominators are those of the whole optimizer batch, however it is cut (but for BNPO). */
static void tti_batch_losses(tti_batch_loss *b, const tt_loss_batch *batch, const tt_grpo_config *c,
                             tt_grpo_metrics *metrics) {
    tti_denominators d;
    size_t at = 0;
    int n = tti_batch_size(batch), i;
    d.of = batch->totals ? *batch->totals : tt_grpo_totals(batch->rollouts, c);
    d.limit = c->max_completion_length;
    d.micro = 0;
    for (i = 0; i < n; i++) { d.micro += tti_loss_tokens(tti_batch_at(batch, i), c); }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_batch_at(batch, i);
        tti_rollout_loss(b, at, r, c, &d, metrics);
        at += (size_t)r->response_length;
    }
    if (metrics) { metrics->loss += b->loss; }
}

/* ---- [tt:grpo.graph] the loss as an op ---- */

static tt_status tti_grpo_forward(void *user, tt_tensor *const *in, int n_in, tt_tensor *out) {
    float loss = (float)((tti_batch_loss *)user)->loss;
    (void)in;
    (void)n_in;
    return tt_tensor_set(out, &loss);
}

static int tti_all_zero(const float *x, int n) {
    int i = 0;
    while (i < n && x[i] == 0) { i++; }
    return i == n;
}

/* Where all slopes are 0, as when each group's rewards are equal, none is passed on: the whole backward pass
 * falls away. */
static tt_status tti_grpo_backward(void *user, tt_tensor *const *in, int n_in, tt_tensor *out) {
    tti_batch_loss *b = (tti_batch_loss *)user;
    tt_context *ctx = out->ctx;
    size_t bytes = (size_t)b->n * sizeof(float);
    float scale, *device = (float *)tti_arena_alloc(ctx, &ctx->device, bytes);
    tt_status status = device ? ctx->backend->download(ctx, &scale, out->grad, sizeof scale) : TT_ERR_MEM;
    int k;
    for (k = 0; k < n_in && status == TT_OK; k++) {
        const float *values = k ? b->dentropy : b->dlogprobs;
        float *grad = tti_all_zero(values, b->n) ? NULL : tt_grad(in[k]);
        if (!grad) { continue; }
        status = ctx->backend->upload(ctx, device, values, bytes);
        if (status == TT_OK) { status = ctx->backend->axpy(ctx, grad, device, scale, (size_t)b->n); }
    }
    return status;
}

/* Host copies of the two vectors, and room for their slopes; NULL with the graph's error set. */
static tti_batch_loss *tti_batch_loss_begin(tt_context *ctx, tt_tensor *logprobs, tt_tensor *entropy) {
    size_t n = logprobs->size;
    tti_batch_loss *b = (tti_batch_loss *)tti_step_alloc(ctx, sizeof *b);
    if (b) { b->logprobs = (float *)tti_step_alloc(ctx, n * 4 * sizeof(float)); }
    if (!b || !b->logprobs) {
        ctx->graph_error = 1;
        return NULL;
    }
    b->n = (int)n;
    b->dlogprobs = b->logprobs + n;
    if (!tti_graph_ok(ctx, tt_tensor_get(logprobs, b->logprobs))) { return NULL; }
    if (!entropy) { return b; }
    b->entropy = b->dlogprobs + n;
    b->dentropy = b->entropy + n;
    return tti_graph_ok(ctx, tt_tensor_get(entropy, b->entropy)) ? b : NULL;
}

/* The vectors have one value for each response token, and there are entropies if the config wants them. */
static int tti_grpo_sizes_ok(tt_context *ctx, const tt_tensor *logprobs, const tt_tensor *entropy,
                             const tt_loss_batch *batch, const tt_grpo_config *c) {
    int total = 0, bonus = c->entropy_coef != 0, i;
    for (i = 0; i < tti_batch_size(batch); i++) { total += tti_batch_at(batch, i)->response_length; }
    if ((int)logprobs->size != total) {
        tti_graph_fail(ctx, "tt_grpo_loss", "number of log-probs", (int)logprobs->size, total);
        return 0;
    }
    if (entropy && (int)entropy->size != total) {
        tti_graph_fail(ctx, "tt_grpo_loss", "number of entropies", (int)entropy->size, total);
        return 0;
    }
    if (entropy || (!bonus && c->top_entropy_quantile >= 1)) { return 1; }
    tt_fail(ctx, TT_ERR_ARG, "tt_grpo_loss: %s is %g but entropy is NULL",
            bonus ? "entropy_coef" : "top_entropy_quantile",
            (double)(bonus ? c->entropy_coef : c->top_entropy_quantile));
    ctx->graph_error = 1;
    return 0;
}

/* All of the mathematics has run when the op is recorded; backward only scales and adds the slopes. */
TT_API tt_tensor *tt_grpo_loss(tt_context *ctx, tt_tensor *logprobs, tt_tensor *entropy,
                               const tt_loss_batch *batch, const tt_grpo_config *config,
                               tt_grpo_metrics *metrics) {
    tt_grpo_config c = tt_grpo_resolve(config);
    tt_op_desc op = TT_INIT;
    tt_tensor *in[2];
    tti_batch_loss *b;
    if (!tti_inputs_ok(ctx, "tt_grpo_loss", &logprobs, 1) || !tti_graph_ok(ctx, tt_grpo_check(ctx, &c))) {
        return NULL;
    }
    if (!tti_grpo_sizes_ok(ctx, logprobs, entropy, batch, &c)) { return NULL; }
    b = tti_batch_loss_begin(ctx, logprobs, entropy);
    if (!b || !tti_graph_ok(ctx, tti_entropy_quantile(ctx, b, batch, &c))) { return NULL; }
    if (c.token_loss_begin &&
        !tti_graph_ok(ctx, c.token_loss_begin(c.token_loss_user, &c, batch, b->logprobs))) {
        return NULL;
    }
    tti_batch_losses(b, batch, &c, metrics);
    in[0] = logprobs;
    in[1] = entropy;
    op.name = "tt_grpo_loss";
    op.forward = tti_grpo_forward;
    op.backward = tti_grpo_backward;
    op.user = b;
    return tt_custom(ctx, &op, in, entropy ? 2 : 1, 0, NULL);
}

/* ==== 12. think ============================================================================
 * tt_think_augment: choose some stopped responses of each group, ask the teacher about all of them at once,
 * and put "response, reason, phrase" in the place of the response; or, with `refine`, let the student read
 * that and answer anew, in the place of another sample. Any function may be the teacher; the
 * built-in one is a model whose prompt is a template around question and response, and whose answer has three
 * tagged texts. Source: ThinkTuning, RRV et al., EMNLP 2025, arXiv 2508.07616. */

/* ---- [tt:think.schedule] how many responses are guided, and until when ---- */

/* Zeros become the paper's defaults. */
static tt_think_config tti_think_resolve(const tt_think_config *in) {
    tt_think_config c = *in;
    if (c.init_pct == 0) { c.init_pct = 0.1f; }
    if (c.min_pct == 0) { c.min_pct = 0.01f; }
    if (c.off_eps == 0) { c.off_eps = 0.05f; }
    if (!c.separator) { c.separator = "\n\n"; }
    return c;
}

/* From init_pct down to min_pct within the first third of total_steps: d steps. With s = min(step, d):
 * linear init - (init - min) s / d;  cosine min + (init - min) (1 + cos(pi s / d)) / 2;  exp init (min /
 * init)^(s / d). */
TT_API double tt_think_pct(const tt_think_config *config, int step) {
    tt_think_config c = tti_think_resolve(config);
    double init = (double)c.init_pct, low = (double)c.min_pct;
    double d = c.total_steps / 3 > 1 ? c.total_steps / 3 : 1, at = step < d ? step : d, pct;
    switch (c.schedule) {
    case TT_THINK_CONSTANT: return init;
    case TT_THINK_COSINE: return low + 0.5 * (init - low) * (1 + cos(3.141592653589793 * at / d));
    case TT_THINK_EXP:
        pct = init * pow(pow((low > 1e-8 ? low : 1e-8) / init, 1 / d), at);
        return pct > low ? pct : low;
    case TT_THINK_LINEAR: break;
    }
    return init - (init - low) * at / d;
}

/* pct never rises, so "off for good at the first step where it is low" is a test of this step alone. */
TT_API int tt_think_active(const tt_think_config *config, int step) {
    tt_think_config c = tti_think_resolve(config);
    return c.off_eps < 0 || tt_think_pct(&c, step) > (double)c.off_eps + 0.01;
}

/* ---- [tt:think.tags] the three texts of a feedback ---- */

static const char *const tti_tags[3] = {"reason", "phrase", "opinion"};

/* The last `what` before `end`, or NULL. */
static const char *tti_find_last(const char *text, const char *end, const char *what) {
    size_t n = strlen(what);
    const char *at;
    if ((size_t)(end - text) < n) { return NULL; }
    for (at = end - n; memcmp(at, what, n) != 0; at--) {
        if (at == text) { return NULL; }
    }
    return at;
}

/* The last closing tag and the last opening one before it: small models repeat themselves. */
TT_API int tt_think_tag(const char *text, size_t size, const char *name, const char **begin, size_t *length) {
    char open[64], close[64];
    const char *end = text + size, *from, *to;
    *begin = text;
    *length = 0;
    if (!text || strlen(name) > sizeof open - 4) { return 0; }
    snprintf(open, sizeof open, "<%s>", name);
    snprintf(close, sizeof close, "</%s>", name);
    to = tti_find_last(text, end, close);
    from = to ? tti_find_last(text, to, open) : NULL;
    if (!from) { return 0; }
    from += strlen(open);
    while (to > from && tti_is_space(to[-1])) { to--; }
    while (from < to && tti_is_space(*from) && !(*from == ' ' && !tti_is_space(from[1]))) { from++; }
    *begin = from;
    *length = (size_t)(to - from);
    return 1;
}

/* Closes the tag in which the text ends, if it ends in one. */
static tt_status tti_close_tag(tt_text *text) {
    const char *last = NULL, *end = text->data + text->size;
    char open[16], close[16];
    int k, which = 0;
    for (k = 0; k < 3; k++) {
        const char *at;
        snprintf(open, sizeof open, "<%s>", tti_tags[k]);
        at = tti_find_last(text->data, end, open);
        if (at && (!last || at > last)) {
            last = at;
            which = k;
        }
    }
    if (!last) { return TT_OK; }
    snprintf(close, sizeof close, "</%s>", tti_tags[which]);
    return tti_find_last(last, end, close) ? TT_OK : tt_text_append(text, close, strlen(close));
}

/* ---- [tt:think.examples] worked examples from a file ----
 * Sections [system] (an instruction) and [self-...] (question, response, feedback under lines of those names)
 * become, in their order, the ids before every prompt of the teacher. */

struct tt_model_teacher {
    tt_context *ctx;
    tt_model *model;
    const tt_tokenizer *tokenizer;
    char *prompt_template;
    tt_ids before;                 /* system text and worked examples */
    int32_t stop_token;
    int max_new_tokens, max_batch, close_tags;
};

enum { TTI_QUESTION, TTI_RESPONSE, TTI_FEEDBACK, TTI_INSTRUCTION, TTI_N_PARTS };
static const char *const tti_part_names[TTI_N_PARTS] = {"Question:", "Response:", "Feedback:", "text"};

typedef struct tti_examples {
    const char *path, *pattern, *section;   /* section: the line that began the one being read, NULL before
                                               the first */
    size_t section_size, begin[TTI_N_PARTS], size[TTI_N_PARTS];
    int part, line;                         /* part: the one being read, -1 = none */
    tt_text file;
} tti_examples;

/* "[name]" of small letters and hyphens. */
static int tti_is_section(const char *line, size_t n) {
    size_t i;
    if (n < 3 || line[0] != '[' || line[n - 1] != ']') { return 0; }
    for (i = 1; i + 1 < n; i++) {
        if (line[i] != '-' && (line[i] < 'a' || line[i] > 'z')) { return 0; }
    }
    return 1;
}

/* Narrows text[begin .. begin + size) until it neither begins nor ends with white space. */
static void tti_trim(const char *text, size_t *begin, size_t *size) {
    while (*size > 0 && tti_is_space(text[*begin])) {
        ++*begin;
        --*size;
    }
    while (*size > 0 && tti_is_space(text[*begin + *size - 1])) { --*size; }
}

/* Each part that the section wants is there. */
static tt_status tti_examples_check(tt_model_teacher *t, const tti_examples *e) {
    int system = strncmp(e->section, "[system]", 8) == 0, k;
    for (k = 0; k < TTI_N_PARTS; k++) {
        if ((k == TTI_INSTRUCTION) != system || e->size[k] > 0) { continue; }
        return tt_fail(t->ctx, TT_ERR_FILE, "%s line %d: section %.*s has no %s", e->path, e->line,
                       (int)e->section_size, e->section, tti_part_names[k]);
    }
    return TT_OK;
}

/* The section that ends here goes to the prompt. The tags of a feedback may be special tokens. */
static tt_status tti_examples_flush(tt_model_teacher *t, tti_examples *e) {
    const char *text = e->file.data;
    tti_slot slots[3];
    tt_status status;
    int k;
    if (!e->section) { return TT_OK; }
    for (k = 0; k < TTI_N_PARTS; k++) { tti_trim(text, &e->begin[k], &e->size[k]); }
    status = tti_examples_check(t, e);
    if (status == TT_OK && e->size[TTI_INSTRUCTION] > 0) {
        const char *instruction = text + e->begin[TTI_INSTRUCTION];
        status = tt_encode(t->tokenizer, instruction, e->size[TTI_INSTRUCTION], TT_SPECIAL_PARSE, &t->before);
        return status == TT_OK ? tt_encode(t->tokenizer, "\n\n", 2, TT_SPECIAL_TEXT, &t->before) : status;
    }
    if (status != TT_OK) { return status; }
    slots[0] = tti_slot_make("{question}", text + e->begin[0], e->size[0], TT_SPECIAL_TEXT);
    slots[1] = tti_slot_make("{response}", text + e->begin[1], e->size[1], TT_SPECIAL_TEXT);
    slots[2] = tti_slot_make("{feedback}", text + e->begin[2], e->size[2], TT_SPECIAL_PARSE);
    return tti_render(t->tokenizer, e->pattern, e->pattern + strlen(e->pattern), slots, 3, &t->before);
}

/* A section begins: what came before it is complete. */
static tt_status tti_examples_section(tt_model_teacher *t, tti_examples *e, const char *line, size_t n) {
    static const char *const known[] = {
        "[system]", "[self-agreement]", "[self-conflict]", "[self-consultation]", "[self-critique]"
    };
    tt_status status = tti_examples_flush(t, e);
    size_t k;
    int found = 0;
    if (status != TT_OK) { return status; }
    for (k = 0; k < sizeof known / sizeof *known; k++) {
        found |= strlen(known[k]) == n && memcmp(known[k], line, n) == 0;
    }
    if (!found) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "%s line %d: section %.*s, expected [system], [self-agreement], "
                       "[self-conflict], [self-consultation] or [self-critique]",
                       e->path, e->line, (int)n, line);
    }
    e->section = line;
    e->section_size = n;
    memset(e->size, 0, sizeof e->size);
    e->part = strncmp(line, "[system]", 8) == 0 ? TTI_INSTRUCTION : -1;
    e->begin[TTI_INSTRUCTION] = (size_t)(line - e->file.data) + n;
    return TT_OK;
}

/* A label line begins a part; any other line belongs to the part that is being read. */
static tt_status tti_examples_line(tt_model_teacher *t, tti_examples *e, const char *line, size_t n) {
    size_t at = (size_t)(line - e->file.data);
    int k;
    if (n > 0 && line[n - 1] == '\r') { n--; }
    if (tti_is_section(line, n)) { return tti_examples_section(t, e, line, n); }
    if (!e->section) { return TT_OK; }
    for (k = 0; k < TTI_INSTRUCTION && e->part != TTI_INSTRUCTION; k++) {
        if (n != strlen(tti_part_names[k]) || memcmp(line, tti_part_names[k], n) != 0) { continue; }
        e->part = k;
        e->begin[k] = at + n;
        return TT_OK;
    }
    if (e->part >= 0) { e->size[e->part] = at + n - e->begin[e->part]; }
    return TT_OK;
}

/* Line by line; parts are places in the file's text, so nothing is copied until a section ends. */
static tt_status tti_examples_read(tt_model_teacher *t, const char *path, const char *pattern) {
    tti_examples e;
    size_t at = 0;
    tt_status status;
    memset(&e, 0, sizeof e);
    e.path = path;
    e.pattern = pattern ? pattern : "Question:\n{question}\n\nResponse:\n{response}\n\n{feedback}\n\n";
    e.part = -1;
    e.file.ctx = t->ctx;
    TTI_TRY(tt_file_read(t->ctx, path, &e.file));
    for (e.line = 1; at < e.file.size; e.line++) {
        const char *line = e.file.data + at, *end = (const char *)memchr(line, '\n', e.file.size - at);
        size_t n = end ? (size_t)(end - line) : e.file.size - at;
        TTI_TRY(tti_examples_line(t, &e, line, n));
        at += n + 1;
    }
    TTI_TRY(tti_examples_flush(t, &e));
    if (!e.section) { status = tt_fail(t->ctx, TT_ERR_FILE, "%s: no [section] in it", path); }
done:
    tt_text_free(&e.file);
    return status;
}

/* ---- [tt:think.teacher] a model as teacher ---- */

/* System text first, then the worked examples: the ids before every prompt. */
static tt_status tti_teacher_fill(tt_model_teacher *t, const char *pattern, const tt_teacher_prompt *prompt) {
    tt_status status = TT_OK;
    t->prompt_template = tti_strdup(t->ctx, pattern);
    if (!t->prompt_template) { return TT_ERR_MEM; }
    if (prompt->system) {
        status =
            tt_encode(t->tokenizer, prompt->system, strlen(prompt->system), TT_SPECIAL_PARSE, &t->before);
    }
    if (status == TT_OK && prompt->examples_path) {
        status = tti_examples_read(t, prompt->examples_path, prompt->example_template);
    }
    return status;
}

/* Errors name the field; model and tokenizer are lent. */
TT_API tt_model_teacher *tt_model_teacher_create(tt_model *model, const tt_tokenizer *tokenizer,
                                                 const tt_teacher_prompt *prompt) {
    tt_context *ctx = tt_model_context(model);
    const char *pattern = prompt->prompt_template;
    int stop = prompt->stop_token ? tt_token_id(tokenizer, prompt->stop_token) : -1;
    tt_model_teacher *t;
    if (!pattern) { pattern = "Question:\n{question}\n\nResponse:\n{response}"; }
    if (stop < 0) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_model_teacher_create: stop_token is \"%s\", expected the text of a token",
                prompt->stop_token ? prompt->stop_token : "(NULL)");
        return NULL;
    }
    if (!strstr(pattern, "{question}") || !strstr(pattern, "{response}")) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_model_teacher_create: prompt_template is \"%.80s\", expected {question} and "
                "{response} in it",
                pattern);
        return NULL;
    }
    t = (tt_model_teacher *)tt_alloc(ctx, 1, sizeof *t);
    if (!t) { return NULL; }
    t->ctx = t->before.ctx = ctx;
    t->model = model;
    t->tokenizer = tokenizer;
    t->stop_token = (int32_t)stop;
    t->max_new_tokens = prompt->max_new_tokens ? prompt->max_new_tokens : 1024;
    t->max_batch = prompt->max_batch;
    t->close_tags = prompt->close_tags;
    if (tti_teacher_fill(t, pattern, prompt) == TT_OK) { return t; }
    tt_model_teacher_destroy(t);
    return NULL;
}

TT_API void tt_model_teacher_destroy(tt_model_teacher *t) {
    if (!t) { return; }
    tti_strfree(t->ctx, t->prompt_template);
    tt_ids_free(&t->before);
    tt_free(t->ctx, t, 1, sizeof *t);
}

/* Appends the prompt's ids: special tokens of system text and template count, those in question and response
 * do not. */
static tt_status tti_teacher_prompt(const tt_model_teacher *t, const tt_attempt *a, tt_ids *ids) {
    const char *pattern = t->prompt_template;
    size_t begin = ids->size;
    tti_slot slots[2];
    tt_status status;
    slots[0] = tti_slot_make("{question}", a->question, a->question_size, TT_SPECIAL_TEXT);
    slots[1] = tti_slot_make("{response}", a->response, a->response_size, TT_SPECIAL_TEXT);
    TTI_TRY(tt_ids_append(ids, t->before.data, t->before.size));
    TTI_TRY(tti_render(t->tokenizer, pattern, pattern + strlen(pattern), slots, 2, ids));
    TTI_TRY(tti_begin(t->tokenizer, ids, begin));
done:
    return status;
}

TT_API tt_status tt_teacher_prompt_text(const tt_model_teacher *t, const char *question, const char *response,
                                        tt_text *out) {
    tt_attempt a = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_status status;
    ids.ctx = t->ctx;
    a.question = question;
    a.question_size = strlen(question);
    a.response = response;
    a.response_size = strlen(response);
    TTI_TRY(tti_teacher_prompt(t, &a, &ids));
    TTI_TRY(tt_decode(t->tokenizer, ids.data, ids.size, 0, out));
done:
    tt_ids_free(&ids);
    return status;
}

/* One parameter: to = decay to + (1 - decay) from. */
static tt_status tti_follow(tt_context *ctx, tt_tensor *to, const tt_tensor *from, float decay) {
    tt_status status;
    if (!from->requires_grad) { return TT_OK; }      /* the frozen base of adapters */
    if (to->size != from->size || to->dtype != TT_F32 || to->lent) {
        return tt_fail(ctx, TT_ERR_SHAPE,
                       "tt_teacher_follow: %s of the teacher has another size, is not of 32 bits or "
                       "lies in a mapped file",
                       to->name ? to->name : "a parameter");
    }
    to->panels_at = 0;
    status = ctx->backend->axpy(ctx, TT_F(to), TT_F(to), decay - 1, to->size);
    return status == TT_OK ? ctx->backend->axpy(ctx, TT_F(to), TT_F(from), 1 - decay, to->size) : status;
}

/* Source: mean teachers, Tarvainen and Valpola 2017, arXiv 1703.01780. */
TT_API tt_status tt_teacher_follow(tt_model *teacher, const tt_model *student, float decay) {
    tt_context *ctx = tt_model_context(teacher);
    size_t has = tt_model_size(teacher), wants = tt_model_size(student);
    tt_status status = TT_OK;
    int n = tt_model_n_params(teacher), i;
    if (!(decay >= 0 && decay <= 1)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_teacher_follow: decay is %g, expected 0 .. 1", (double)decay);
    }
    if (teacher == student) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_teacher_follow: the teacher is the student itself, expected another model");
    }
    if (n != tt_model_n_params(student) || has != wants) {
        return tt_fail(ctx, TT_ERR_SHAPE, "tt_teacher_follow: the teacher has %lu weights, the student %lu",
                       (unsigned long)has, (unsigned long)wants);
    }
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tti_follow(ctx, tt_model_param(teacher, i), tt_model_param(student, i), decay);
    }
    return status;
}

/* A tag that is missing gives an empty text: the feedback is blank there, and counted as such by the gate. */
static tt_status tti_feedback_read(const tt_model_teacher *t, const tt_completion *c, tt_text *scratch,
                                   tt_feedback *out) {
    tt_text *const texts[3] = {&out->reason, &out->phrase, &out->opinion};
    int n = c->length - (t->close_tags ? c->stopped : 0), k;
    const char *begin;
    size_t length;
    tt_status status;
    scratch->size = 0;
    out->n_tokens = c->length;
    TTI_TRY(tt_decode(t->tokenizer, c->tokens, (size_t)n, 0, scratch));
    if (t->close_tags) { TTI_TRY(tti_close_tag(scratch)); }
    for (k = 0; k < 3; k++) {
        tt_think_tag(scratch->data, scratch->size, tti_tags[k], &begin, &length);
        TTI_TRY(tt_text_append(texts[k], begin, length));
    }
done:
    return status;
}

/* The prompts of a call that leave room for an answer. */
typedef struct tti_questions {
    tt_ids ids;
    size_t *offsets;
    tt_request *requests;
    int n, longest;
} tti_questions;

/* All ids stand in one list; a request points into it once it grows no more. */
static tt_status tti_questions_make(const tt_model_teacher *t, const tt_attempt *attempts, int n, int limit,
                                    tti_questions *q) {
    int i;
    for (i = 0; i < n; i++) {
        tt_status status = tti_teacher_prompt(t, &attempts[i], &q->ids);
        if (status != TT_OK) { return status; }
        q->offsets[i + 1] = q->ids.size;
    }
    for (i = 0; i < n; i++) {
        int length = (int)(q->offsets[i + 1] - q->offsets[i]);
        if (length >= limit) { continue; }
        q->requests[q->n].prompt = q->ids.data + q->offsets[i];
        q->requests[q->n].prompt_length = length;
        q->requests[q->n++].id = (uint64_t)i;
        if (length > q->longest) { q->longest = length; }
    }
    if (n == 0 || q->n > 0) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_ARG, "teacher: its prompt has %d tokens, expected fewer than "
                   "max_position_embeddings %d", (int)q->offsets[1], limit);
}

/* An attempt whose prompt leaves no room gets no feedback; that none has room is an error. */
static tt_status tti_model_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    const tt_model_teacher *t = (const tt_model_teacher *)user;
    tt_context *ctx = t->ctx;
    int limit = tt_model_config_get(t->model)->max_position_embeddings, room, i;
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tti_questions q = TT_INIT;
    tt_text scratch = TT_INIT;
    tt_status status = TT_ERR_MEM;
    q.ids.ctx = scratch.ctx = completions.ctx = ctx;
    q.requests = (tt_request *)tt_alloc(ctx, (size_t)n, sizeof *q.requests);
    q.offsets = (size_t *)tt_alloc(ctx, (size_t)n + 1, sizeof *q.offsets);
    if (!q.requests || !q.offsets) { goto done; }
    TTI_TRY(tti_questions_make(t, attempts, n, limit, &q));
    room = limit - q.longest;
    sampling.greedy = 1;
    sampling.max_new_tokens = t->max_new_tokens < room ? t->max_new_tokens : room;
    sampling.stop_tokens = &t->stop_token;
    sampling.n_stop_tokens = 1;
    sampling.max_batch = t->max_batch;
    TTI_TRY(tt_generate(t->model, q.requests, q.n, &sampling, &completions));
    for (i = 0; i < q.n; i++) {
        TTI_TRY(tti_feedback_read(t, &completions.items[i], &scratch, &out[q.requests[i].id]));
    }
done:
    if (completions.n) { tt_completions_free(&completions); }
    tt_free(ctx, q.requests, (size_t)n, sizeof *q.requests);
    tt_free(ctx, q.offsets, (size_t)n + 1, sizeof *q.offsets);
    tt_ids_free(&q.ids);
    tt_text_free(&scratch);
    return status;
}

TT_API tt_teacher tt_teacher_model(tt_model_teacher *t) {
    tt_teacher teacher;
    teacher.feedback = tti_model_feedback;
    teacher.user = t;
    return teacher;
}

/* ---- [tt:think.select] which responses ---- */

/* A response that was cut has no end to go on from; an end token alone is no attempt. */
static int tti_is_eligible(const tt_rollout *r) {
    return r->stopped && !r->off_policy && r->response_length > 1;
}

/* How many of a group's `size` samples give way to refined ones: at most half. */
static int tti_think_replaced(const tt_think_config *c, int size, int step) {
    int n = (int)floor(size * tt_think_pct(c, step)), most = size / 2;
    return !c->refine ? 0 : n < 1 ? 1 : n > most ? most : n;
}

/* k of each group's stopped responses, without replacement: a shuffle whose random stream is a function of
 * (seed, step, prompt id). Where feedback is appended, k = max(1, floor(eligible pct)); where it is refined,
 * one for each sample that gives way. chosen receives rollout indices; returns how many. */
static int tti_think_select(const tt_rollouts *all, const tt_think_config *c, int step, int *chosen,
                            tt_think_metrics *m) {
    int g, i, n = 0, size = all->num_generations, n_replaced = tti_think_replaced(c, size, step);
    for (g = 0; g < all->n_groups; g++) {
        int *pool = chosen + n, eligible = 0, k;
        tt_rng rng;
        for (i = g * size; i < (g + 1) * size - n_replaced; i++) {
            if (tti_is_eligible(&all->items[i])) { pool[eligible++] = i; }
        }
        m->n_eligible += eligible;
        k = c->refine ? n_replaced : (int)floor(eligible * tt_think_pct(c, step));
        if (k < 1) { k = 1; }
        if (k > eligible) { k = eligible; }
        rng.seed = c->seed;
        rng.stream = tt_random(c->seed, all->items[g * size].prompt_id, (uint64_t)step);
        rng.index = 0;
        for (i = 0; i < k; i++) {
            int j = i + tt_rng_below(&rng, eligible - i), swap = pool[i];
            pool[i] = pool[j];
            pool[j] = swap;
        }
        n += k;
    }
    return n;
}

/* ---- [tt:think.augment] feedback becomes part of the response ---- */

/* The random stream of refined answers, apart from those of trainer and tasks of the same seed. */
enum { TTI_THINK_REFINE = 0x7265666e };

/* One call of tt_think_augment: the chosen rollouts, what the teacher is shown of them, and what it said. */
typedef struct tti_lesson {
    tt_rollouts *all;
    const tt_augment *how;
    const tt_think_config *config;
    tt_think_metrics *metrics;
    int n, *chosen;               /* [all->n], n of them in use          */
    size_t *at;                   /* [3 all->n] where question, response and the next begin in text */
    tt_text text;                 /* question NUL response NUL ...       */
    tt_attempt *attempts;         /* [all->n]                            */
    tt_feedback *feedback;        /* [all->n]                            */
} tti_lesson;

/* What the teacher is shown of a rollout: question and response, without its end token. */
static tt_status tti_think_attempt(tti_lesson *l, int index, size_t at[3]) {
    const tt_rollout *r = &l->all->items[index];
    const char *question = l->all->questions[r->group];
    const int32_t *response = r->tokens + r->prompt_length;
    const tt_tokenizer *tokenizer = l->how->tokenizer;
    tt_status status;
    at[0] = l->text.size;
    if (question) {
        TTI_TRY(tt_text_append(&l->text, question, strlen(question)));
    } else {
        TTI_TRY(tt_decode(tokenizer, r->tokens, (size_t)r->prompt_length, 1, &l->text));
    }
    TTI_TRY(tt_text_append(&l->text, "", 1));
    at[1] = l->text.size;
    TTI_TRY(tt_decode(tokenizer, response, (size_t)(r->response_length - 1), 0, &l->text));
    TTI_TRY(tt_text_append(&l->text, "", 1));
    at[2] = l->text.size;
done:
    return status;
}

/* One call for all, so that a model teacher decodes them as one batch. */
static tt_status tti_think_ask(tti_lesson *l) {
    tt_context *ctx = l->all->ctx;
    const tt_teacher *teacher = l->how->teacher;
    tt_status status;
    int i;
    for (i = 0; i < l->n; i++) {
        status = tti_think_attempt(l, l->chosen[i], l->at + 3 * i);
        if (status != TT_OK) { return status; }
    }
    for (i = 0; i < l->n; i++) {          /* only now: a text that grows moves */
        const size_t *at = l->at + 3 * i;
        tt_attempt *a = &l->attempts[i];
        a->question = l->text.data + at[0];
        a->question_size = at[1] - at[0] - 1;
        a->response = l->text.data + at[1];
        a->response_size = at[2] - at[1] - 1;
        a->rollout = l->chosen[i];
        l->feedback[i].reason.ctx = l->feedback[i].phrase.ctx = l->feedback[i].opinion.ctx = ctx;
    }
    tt_error_clear(ctx);                  /* an older error is not the teacher's reason */
    status = teacher->feedback(teacher->user, l->attempts, l->n, l->feedback);
    if (status != TT_OK && tt_error_status(ctx) == TT_OK) {
        tt_fail(ctx, status, "tt_think_augment: the teacher failed: %s", tt_status_name(status));
    }
    return status;
}

/* A part that the teacher left out has no data. */
static tt_status tti_append_said(tt_text *text, const tt_text *said) {
    return said->data ? tt_text_append(text, said->data, said->size) : TT_OK;
}

/* A text without capacity has not grown here: it is lent. */
static void tti_free_said(tt_text *said) {
    if (said->capacity > 0) { tt_text_free(said); }
}

/* The guided response: the attempt without its end token, separator, reason, separator, phrase, end token;
 * cut at the limit. */
static tt_status tti_guided_tokens(tti_lesson *l, const tt_rollout *r, const tt_feedback *f, tt_ids *ids) {
    const char *separator = l->config->separator;
    int32_t end = (int32_t)l->how->end_token;
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = l->all->ctx;
    TTI_TRY(tt_text_append(&text, separator, strlen(separator)));
    TTI_TRY(tti_append_said(&text, &f->reason));
    TTI_TRY(tt_text_append(&text, separator, strlen(separator)));
    TTI_TRY(tti_append_said(&text, &f->phrase));
    TTI_TRY(tt_ids_append(ids, r->tokens + r->prompt_length, (size_t)(r->response_length - 1)));
    TTI_TRY(tt_encode(l->how->tokenizer, text.data, text.size, TT_SPECIAL_TEXT, ids));
    TTI_TRY(tt_ids_append(ids, &end, 1));
    if (ids->size > (size_t)INT_MAX) {
        status = tt_fail(l->all->ctx, TT_ERR_ARG, "tt_think_augment: a feedback has %lu tokens",
                         (unsigned long)ids->size);
    }
done:
    tt_text_free(&text);
    return status;
}

/* With TT_MASK_WHOLE (the paper's) the student's own tokens of a guided response are shaped too. */
static tt_status tti_think_replace(tti_lesson *l, int index, const tt_feedback *f) {
    tt_rollout *r = &l->all->items[index];
    int attempt = r->response_length - 1, limit = l->how->max_completion_length, n, t;
    tt_ids ids = TT_INIT;
    tt_status status;
    ids.ctx = l->all->ctx;
    TTI_TRY(tti_guided_tokens(l, r, f, &ids));
    n = (int)ids.size;
    if (n > l->metrics->longest_guided) { l->metrics->longest_guided = n; }
    if (n > limit) {
        n = limit;
        l->metrics->n_cut++;
    }
    TTI_TRY(tt_rollout_replace(l->all, index, ids.data, n, attempt < n ? attempt : n, l->how->end_token));
    for (t = r->prompt_length; l->config->mask == TT_MASK_WHOLE && t < r->prompt_length + n; t++) {
        if (r->kind[t] == TT_KIND_STUDENT) { r->kind[t] = TT_KIND_GUIDED; }
    }
    l->metrics->teacher_tokens += f->n_tokens > 0 ? f->n_tokens : r->response_length - r->attempt_length;
done:
    tt_ids_free(&ids);
    return status;
}

/* ---- [tt:think.refine] feedback is read, and the question answered anew ----
 * y1 ~ student(x, y0, f) is trained as a response to x alone, so that what the feedback made possible becomes
 * what the student does by itself. The places that give way are fixed by the schedule before anything is
 * chosen, so an attempt is never lost to its own refinement. */

/* The prompts "x, y0, f" that leave room for an answer, as requests; which[k]: the lesson of request k. A
 * request's random stream is named by step, prompt and sample. */
static tt_status tti_refine_prompts(tti_lesson *l, tti_questions *q, int *which) {
    const char *pattern = l->config->refine, *end = pattern + strlen(pattern);
    int limit = tt_model_config_get(l->how->student)->max_position_embeddings, i;
    tt_status status = TT_OK;
    for (i = 0; i < l->n; i++) {
        const tt_attempt *a = &l->attempts[i];
        const tt_feedback *f = &l->feedback[i];
        tti_slot slots[4];
        const char *reason = f->reason.data ? f->reason.data : "", *phrase = f->phrase.data;
        slots[0] = tti_slot_make("{question}", a->question, a->question_size, TT_SPECIAL_TEXT);
        slots[1] = tti_slot_make("{response}", a->response, a->response_size, TT_SPECIAL_TEXT);
        slots[2] = tti_slot_make("{reason}", reason, f->reason.size, TT_SPECIAL_TEXT);
        slots[3] = tti_slot_make("{phrase}", phrase ? phrase : "", f->phrase.size, TT_SPECIAL_TEXT);
        TTI_TRY(tti_render(l->how->tokenizer, pattern, end, slots, 4, &q->ids));
        TTI_TRY(tti_begin(l->how->tokenizer, &q->ids, q->offsets[i]));
        q->offsets[i + 1] = q->ids.size;
    }
    for (i = 0; i < l->n; i++) {
        const tt_rollout *r = &l->all->items[l->chosen[i]];
        int length = (int)(q->offsets[i + 1] - q->offsets[i]);
        if (length < 1 || length > limit - l->how->max_completion_length) {
            l->metrics->n_skipped++;
            continue;
        }
        q->requests[q->n].prompt = q->ids.data + q->offsets[i];
        q->requests[q->n].prompt_length = length;
        q->requests[q->n].id = tt_random((uint64_t)l->how->step, r->prompt_id, (uint64_t)r->sample);
        which[q->n++] = i;
    }
done:
    return status;
}

/* The new answer to attempt number i, the k-th of its group, takes the k-th place from the group's end. */
static tt_status tti_refine_join(tti_lesson *l, int i, int k, const tt_completion *c) {
    const tt_rollout *attempt = &l->all->items[l->chosen[i]];
    int place = (attempt->group + 1) * l->all->num_generations - 1 - k;
    tt_rollout *r = &l->all->items[place];
    tt_status status = tt_rollout_off_policy(l->all, place, c->tokens, c->length, l->how->end_token);
    if (status != TT_OK) { return status; }
    r->guided = 1;
    r->attempt_reward = attempt->reward;
    l->metrics->n_guided++;
    l->metrics->teacher_tokens += l->feedback[i].n_tokens + c->length;
    return TT_OK;
}

/* All refined questions are asked at once. Attempts of a group stand side by side, so the answer's number
 * within its group, k, begins anew where the group changes. */
static tt_status tti_think_refine(tti_lesson *l) {
    const tt_augment *how = l->how;
    tt_context *ctx = l->all->ctx;
    size_t count = (size_t)l->n;
    int32_t end = (int32_t)how->end_token;
    tt_completions answers = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tti_questions q = TT_INIT;
    int *which = (int *)tt_alloc(ctx, count, sizeof *which), i, k = 0, group = -1;
    tt_status status = TT_ERR_MEM;
    q.ids.ctx = answers.ctx = ctx;
    q.requests = (tt_request *)tt_alloc(ctx, count, sizeof *q.requests);
    q.offsets = (size_t *)tt_alloc(ctx, count + 1, sizeof *q.offsets);
    if (!which || !q.requests || !q.offsets) { goto done; }
    l->metrics->n_guided = 0;
    TTI_TRY(tti_refine_prompts(l, &q, which));
    if (q.n == 0) { goto done; }
    sampling.max_new_tokens = how->max_completion_length;
    sampling.temperature = how->temperature;
    sampling.seed = tt_random(l->config->seed, TTI_THINK_REFINE, 0);
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    sampling.max_batch = how->max_batch;
    TTI_TRY(tt_generate(how->student, q.requests, q.n, &sampling, &answers));
    for (i = 0; i < q.n; i++) {
        int at = l->all->items[l->chosen[which[i]]].group;
        k = at == group ? k + 1 : 0;
        group = at;
        TTI_TRY(tti_refine_join(l, which[i], k, &answers.items[i]));
    }
done:
    tt_completions_free(&answers);
    tt_free(ctx, which, count, sizeof *which);
    tt_free(ctx, q.requests, count, sizeof *q.requests);
    tt_free(ctx, q.offsets, count + 1, sizeof *q.offsets);
    tt_ids_free(&q.ids);
    return status;
}

/* Select, ask, replace. Rewards of the new responses are the caller's to give. */
static tt_status tti_think_run(tti_lesson *l) {
    size_t count = (size_t)l->all->n;
    tt_context *ctx = l->all->ctx;
    tt_status status = TT_OK;
    int i;
    l->text.ctx = ctx;
    l->chosen = (int *)tt_alloc(ctx, count, sizeof *l->chosen);
    l->at = (size_t *)tt_alloc(ctx, 3 * count, sizeof *l->at);
    l->attempts = (tt_attempt *)tt_alloc(ctx, count, sizeof *l->attempts);
    l->feedback = (tt_feedback *)tt_alloc(ctx, count, sizeof *l->feedback);
    if (!l->chosen || !l->at || !l->attempts || !l->feedback) { return TT_ERR_MEM; }
    l->metrics->pct = tt_think_pct(l->config, l->how->step);
    l->n = tti_think_select(l->all, l->config, l->how->step, l->chosen, l->metrics);
    l->metrics->n_guided = l->n;
    if (l->n > 0) { status = tti_think_ask(l); }
    if (l->config->refine) { return status == TT_OK && l->n > 0 ? tti_think_refine(l) : status; }
    for (i = 0; i < l->n && status == TT_OK; i++) {
        status = tti_think_replace(l, l->chosen[i], &l->feedback[i]);
    }
    return status;
}

static void tti_lesson_free(tti_lesson *l) {
    size_t count = (size_t)l->all->n;
    tt_context *ctx = l->all->ctx;
    int i;
    for (i = 0; l->feedback && i < l->n; i++) {
        tti_free_said(&l->feedback[i].reason);
        tti_free_said(&l->feedback[i].phrase);
        tti_free_said(&l->feedback[i].opinion);
    }
    tt_free(ctx, l->chosen, count, sizeof *l->chosen);
    tt_free(ctx, l->at, 3 * count, sizeof *l->at);
    tt_free(ctx, l->attempts, count, sizeof *l->attempts);
    tt_free(ctx, l->feedback, count, sizeof *l->feedback);
    tt_text_free(&l->text);
}

/* pct is a share of each group, so 0 < min_pct <= init_pct <= 1. */
static tt_status tti_think_check(const tt_rollouts *all, const tt_augment *how, const tt_think_config *c) {
    tt_context *ctx = all->ctx;
    if (!how->teacher || !how->teacher->feedback) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_think_augment: teacher.feedback is NULL");
    }
    if (how->max_completion_length < 1) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_think_augment: max_completion_length is %d, expected >= 1",
                       how->max_completion_length);
    }
    if (c->total_steps < 1) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_think_augment: total_steps is %d, expected >= 1", c->total_steps);
    }
    if (!(c->init_pct > 0 && c->init_pct <= 1 && c->min_pct > 0 && c->min_pct <= c->init_pct)) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_think_augment: init_pct is %g and min_pct %g, expected 0 < min_pct <= "
                       "init_pct <= 1",
                       (double)c->init_pct, (double)c->min_pct);
    }
    if (c->refine && (!how->student || all->num_generations < 2)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_think_augment: refine with num_generations %d and %s, expected "
                       ">= 2 and a student", all->num_generations, how->student ? "a student" : "none");
    }
    return TT_OK;
}

TT_API tt_status tt_think_augment(tt_rollouts *all, const tt_augment *how, const tt_think_config *config,
                                  tt_think_metrics *metrics) {
    tt_think_config c = tti_think_resolve(config);
    tt_think_metrics m = TT_INIT;
    tti_lesson l;
    tt_status status = tti_think_check(all, how, &c);
    if (status != TT_OK) { return status; }
    memset(&l, 0, sizeof l);
    l.all = all;
    l.how = how;
    l.config = &c;
    l.metrics = &m;
    status = tti_think_run(&l);
    tti_lesson_free(&l);
    if (metrics && status == TT_OK) { *metrics = m; }
    return status;
}

/* ---- [tt:think.score] what the feedback was worth ---- */

static double tti_share(double part, double whole) { return whole > 0 ? part / whole : 0; }

/* Of guided responses, or refined ones: hit (right after feedback), rescued (wrong before, right after),
 * spoiled (the reverse). */
TT_API void tt_think_score(const tt_rollouts *all, tt_think_metrics *m) {
    double guided = 0, own = 0, hits = 0, wrong = 0, rescued = 0, right = 0, spoiled = 0, guided_sum = 0,
           own_sum = 0;
    int i;
    for (i = 0; i < all->n; i++) {
        const tt_rollout *r = &all->items[i];
        int now = r->rewards[0] > 0.5f, before = r->attempt_reward > 0.5f;
        double reward = isnan(r->reward) ? 0 : (double)r->reward;
        if (r->off_policy && !r->guided) { continue; }
        if (!r->guided) {
            own++;
            own_sum += reward;
            continue;
        }
        guided++;
        guided_sum += reward;
        hits += now;
        wrong += !before;
        right += before;
        rescued += !before && now;
        spoiled += before && !now;
    }
    m->guided_share = tti_share(guided, all->n);
    m->teacher_accuracy = tti_share(hits, guided);
    m->rescue_rate = tti_share(rescued, wrong);
    m->spoil_rate = tti_share(spoiled, right);
    m->guided_reward = tti_share(guided_sum, guided);
    m->own_reward = tti_share(own_sum, own);
}

/* ==== 13. train ==========================================================================
 * The loops that tie the chapters together. A task gives questions and rewards (examples/tasks.h has some).
 * The trainer turns questions into prompts, prompts into rollouts, rollouts (after a teacher's feedback) into
 * rewards, advantages, gradients and one update. Its only state is the model, the optimizer and a step
 * counter: prompts, samples and the teacher's choices are functions of (seed, step), so a resumed run is the
 * run that was never interrupted. */

/* ---- [tt:train.client] what the trainer is made of ----
 * From here on the chapter is a client of the chapters above: it calls public functions alone and keeps a few
 * small helpers of its own. So this text, from here to its end, can be copied into a program behind
 * #include "thinktuning.h", its public functions renamed, and changed; tests/test_trainer_copy.sh does that.
 *
 * One step, and the section in which each part of it stands:
 *     ask          question numbers from (seed, step), questions of the task, prompts   train.prompts
 *     sample       num_generations responses of the student to each prompt: a group     train.sample
 *     off-policy   responses of the user's own in the place of some of them
 *     reward       r of each response; what it did is judged and tallied                train.judge
 *     teach        the teacher continues some responses, which are rewarded anew        (chapter 12)
 *     log-probs    under the policy before the update, and under the reference          train.logprobs
 *     advantages   A = f(r of the group, of the batch), over all processes              train.advantages
 *     learn        mean of loss(A, log-probs), its gradient, one update a mini-batch    train.update
 *     report       sums and means over tokens, parts and processes                      train.metrics
 * Its only state between steps is the model, the optimizer and counters. */

#ifndef TTI_TRY
#define TTI_TRY(call)                                \
    do {                                             \
        status = (call);                             \
        if (status != TT_OK) { goto done; }          \
    } while (0)
#endif

/* Random streams of the trainer, apart from those of tasks and evaluations of the same seed: question numbers
 * are draws at index (step, place), the sampler's seed is one draw. */
enum { TTI_TRAIN_PROMPT = 0x73696770, TTI_TRAIN_SAMPLE };

static double tti_ratio(double a, double b) { return b > 0 ? a / b : 0; }

/* Ends a graph. The status is found before the reset, which forgets why building the graph has failed. */
static tt_status tti_end_graph(tt_context *ctx, tt_status status) {
    tt_step_reset(ctx);
    return status;
}

/* A callback of the user's gave status: an error for which it said nothing is named here. Before such a call
 * tt_eval clears what was said earlier, but not why a graph that is being built has failed. */
static tt_status tti_called(tt_context *ctx, tt_status status, const char *who, uint64_t number) {
    if (status == TT_OK || tt_error_status(ctx) != TT_OK) { return status; }
    return tt_fail(ctx, status, "%s %llu failed: %s", who, (unsigned long long)number,
                   tt_status_name(status));
}

/* ---- [tt:train.prompts] questions of a task as prompts ----
 * All texts lie in one buffer and all ids in another, which grow and move; so places are kept as offsets:
 *     at[3 i], at[3 i + 1]   where question and answer i begin in texts, each with a NUL behind it
 *     at[3 i + 2]            where prompt i begins in ids
 * A place that is set again leaves its old text behind until tt_prompts_free. */

TT_API void tt_prompts_free(tt_prompts *p) {
    size_t n = (size_t)p->n;
    if (!p->ctx) { return; }
    tt_text_free(&p->texts);
    tt_ids_free(&p->ids);
    tt_free(p->ctx, p->at, 3 * n, sizeof *p->at);
    tt_free(p->ctx, p->requests, n, sizeof *p->requests);
    memset(p, 0, sizeof *p);
}

TT_API tt_status tt_prompts_create(tt_context *ctx, const tt_task *task, const tt_tokenizer *tokenizer, int n,
                                   tt_prompts *out) {
    memset(out, 0, sizeof *out);
    out->ctx = out->texts.ctx = out->ids.ctx = ctx;
    out->task = task;
    out->tokenizer = tokenizer;
    out->n = n;
    out->at = (size_t *)tt_alloc(ctx, 3 * (size_t)n, sizeof *out->at);
    out->requests = (tt_request *)tt_alloc(ctx, (size_t)n, sizeof *out->requests);
    if (out->at && out->requests) { return TT_OK; }
    tt_prompts_free(out);
    return TT_ERR_MEM;
}

TT_API const char *tt_prompts_question(const tt_prompts *p, int i) { return p->texts.data + p->at[3 * i]; }
TT_API const char *tt_prompts_answer(const tt_prompts *p, int i) { return p->texts.data + p->at[3 * i + 1]; }

/* Asks the task for a question and its answer, which go to the end of texts. The answer comes into a text of
 * its own first, for the task may append to both in turn. */
static tt_status tti_prompts_ask(tt_prompts *p, int i, int split, uint64_t number) {
    const char *who = split ? "task.question: held-out question" : "task.question: question";
    tt_text answer = TT_INIT;
    size_t *at = p->at + 3 * (size_t)i;
    tt_status status;
    answer.ctx = p->ctx;
    at[0] = p->texts.size;
    tt_eval(p->ctx);
    status = p->task->question(p->task->user, split, number, &p->texts, &answer);
    TTI_TRY(tti_called(p->ctx, status, who, number));
    TTI_TRY(tt_text_append(&p->texts, "", 1));
    at[1] = p->texts.size;
    TTI_TRY(tt_text_append(&p->texts, answer.data ? answer.data : "", answer.size));
    TTI_TRY(tt_text_append(&p->texts, "", 1));
done:
    tt_text_free(&answer);
    return status;
}

TT_API tt_status tt_prompts_set(tt_prompts *p, int i, int split, uint64_t number) {
    const char *pattern = p->task->prompt_template, *question;
    size_t begin = p->ids.size;
    tt_status status;
    int k;
    TTI_TRY(tti_prompts_ask(p, i, split, number));
    question = tt_prompts_question(p, i);
    TTI_TRY(tt_encode_prompt(p->tokenizer, pattern, strlen(pattern), question, strlen(question), &p->ids));
    p->at[3 * i + 2] = begin;
    p->requests[i].prompt_length = (int)(p->ids.size - begin);
    if (p->requests[i].prompt_length < 1) {
        status = tt_fail(p->ctx, TT_ERR_ARG, "task %s: prompt %d has no token",
                         p->task->name ? p->task->name : "", i);
        goto done;
    }
    /* ids may have moved */
    for (k = 0; k < p->n; k++) { p->requests[k].prompt = p->ids.data + p->at[3 * k + 2]; }
done:
    return status;
}

TT_API tt_status tt_prompts_input(const tt_prompts *p, int i, tt_text *response, tt_reward_input *in) {
    size_t n = (size_t)(in->n_tokens - (in->stopped ? 1 : 0));      /* without the end token */
    tt_status status;
    response->size = 0;
    status = tt_decode(p->tokenizer, in->tokens, n, 0, response);
    in->prompt = i;
    in->question = tt_prompts_question(p, i);
    in->answer = tt_prompts_answer(p, i);
    in->response = response->data;
    in->response_size = response->size;
    return status;
}

/* What every user of a task asks of it before the first question: that it is complete, that its tokens are
 * rows of the model's embedding, and that a response can end. */
TT_API tt_status tt_task_check(tt_model *model, const tt_tokenizer *tokenizer, const tt_task *task,
                               const char *who, int *end_token) {
    tt_context *ctx = tt_model_context(model);
    const char *missing = !tokenizer ? "tokenizer" : !task ? "task" : !task->question ? "task.question" :
                          !task->reward ? "task.reward" : !task->end_token ? "task.end_token" : NULL;
    int vocab = tt_model_config_get(model)->vocab_size;
    if (missing) { return tt_fail(ctx, TT_ERR_ARG, "%s: %s is NULL", who, missing); }
    if (!task->prompt_template || !strstr(task->prompt_template, "{question}")) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "%s: task.prompt_template is \"%.60s\", expected a text with {question}", who,
                       task->prompt_template ? task->prompt_template : "");
    }
    if (tt_vocab_size(tokenizer) > vocab) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: the tokenizer has %d tokens, the model's vocab_size is %d", who,
                       tt_vocab_size(tokenizer), vocab);
    }
    *end_token = tt_token_id(tokenizer, task->end_token);
    if (*end_token >= 0) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "%s: task.end_token is \"%.60s\", which is no token of the tokenizer",
                   who, task->end_token);
}

/* ---- [tt:train.rewards] calls of reward functions ----
 * They are the user's: what fails in them costs a response its score, not the run its life. */

/* Two failures are passed on all the same: a wish to stop, and memory that is out, which no next response
 * mends. */
static int tti_stops_run(tt_status status) { return status == TT_ERR_STOP || status == TT_ERR_MEM; }

/* After a call that gave status: counts the failure and logs it (tt_fail does) with the place where it was;
 * the first one is kept for the error of a step in which nobody scored anything. The context's error is
 * cleared, for the run goes on. */
static void tti_reward_failed(tt_context *ctx, tt_reward_errors *errors, const char *name,
                              const tt_reward_input *in, tt_status status) {
    char why[sizeof errors->text];
    snprintf(why, sizeof why, "%.500s",
             tt_error_status(ctx) == status ? tt_error(ctx) : tt_status_name(status));
    tt_fail(ctx, status, "reward %s of prompt %d, sample %d: %.400s", name ? name : "", in->prompt,
            in->sample, why);
    if (errors && errors->n++ == 0) {
        errors->status = status;
        snprintf(errors->text, sizeof errors->text, "%.500s", tt_error(ctx));
    }
    tt_error_clear(ctx);
}

/* NaN is an abstention; an infinity would make the group's mean and with it all its advantages NaN. */
TT_API tt_status tt_reward_call(tt_context *ctx, const tt_reward *r, const tt_reward_input *in,
                                tt_reward_errors *errors, float *out) {
    tt_status status;
    *out = (float)NAN;
    tt_error_clear(ctx);
    status = r->reward(r->user, in, out);
    if (tti_stops_run(status)) { return status; }
    if (status == TT_OK && isinf(*out)) {
        status = tt_fail(ctx, TT_ERR_NUMBER, "it is %g, expected a finite number", (double)*out);
    }
    if (status == TT_OK) { return TT_OK; }
    *out = (float)NAN;
    tti_reward_failed(ctx, errors, r->name, in, status);
    return TT_OK;
}

/* ---- [tt:train.judge] what a response did ----
 * A response may reflect: after a first attempt it looks at it again and keeps or changes its answer.
 *     correction rate = P(final answer right | a first attempt, which is wrong)
 *     spoil rate      = P(final answer wrong | a first attempt, which is right)
 * A student that has learned to drop the attempt and to work at once corrects nothing, however often it is
 * right; it is told apart. A task may judge by its own grammar; by default words tell where the reflection
 * begins and of which of the paper's four behaviours it is. Source: ThinkTuning, arXiv 2508.07616. */

/* Where a response begins to reflect, by these words; its end if it does not. */
static size_t tti_reflection_at(const char *response) {
    static const char *const words[] = {"wait",   "Wait",   "check",  "Check",
                                        "verify", "Verify", "mentor", "Mentor"};
    size_t first = strlen(response), i;
    for (i = 0; i < sizeof words / sizeof *words; i++) {
        const char *at = strstr(response, words[i]);
        if (at && (size_t)(at - response) < first) { first = (size_t)(at - response); }
    }
    return first;
}

/* Which reflection it is, by the first row whose word occurs; none of them: not told. The order decides: "the
 * mentor says it is wrong" consults, and "incorrect", which has "correct" in it, is a conflict. */
static tt_behaviour tti_behaviour_by_words(const char *reflection) {
    struct row {
        tt_behaviour kind;
        const char *word;
    };
    static const struct row words[] = {
        {TT_SELF_CONSULTATION, "mentor"}, {TT_SELF_CONSULTATION, "Mentor"}, {TT_SELF_CRITIQUE, "should have"},
        {TT_SELF_CRITIQUE, "should check"}, {TT_SELF_CONFLICT, "wrong"}, {TT_SELF_CONFLICT, "mistake"},
        {TT_SELF_CONFLICT, "incorrect"}, {TT_SELF_CONFLICT, "contradict"}, {TT_SELF_CONFLICT, "error"},
        {TT_SELF_AGREEMENT, "correct"}, {TT_SELF_AGREEMENT, "confirm"}, {TT_SELF_AGREEMENT, "holds"},
        {TT_SELF_AGREEMENT, "agree"}
    };
    size_t k;
    for (k = 0; k < sizeof words / sizeof *words; k++) {
        if (strstr(reflection, words[k].word)) { return words[k].kind; }
    }
    return TT_NO_REFLECTION;
}

/* Is there an answer in it? Without `extract` by what a last number, a box or "####" needs. */
static tt_status tti_attempted(tt_context *ctx, const tt_task *task, const tt_reward_input *in, int *yes) {
    tt_text answer = TT_INIT;
    tt_status status = TT_OK;
    answer.ctx = ctx;
    if (task->extract) { status = task->extract(task->user, in, &answer); }
    *yes = task->extract ? answer.size > 0
                         : strpbrk(in->response, "0123456789") || strstr(in->response, "\\boxed") ||
                               strstr(in->response, "####");
    tt_text_free(&answer);
    return status;
}

/* The task's reward judges the first attempt as it judges the whole: as a response that ends there. A
 * response without reflection is its own first attempt, so that nothing is corrected or spoiled. */
static tt_status tti_judge_by_reward(tt_context *ctx, const tt_task *task, const tt_reward_input *in,
                                     float reward, tt_outcome *out) {
    tt_text attempt = TT_INIT;
    tt_reward_input first = *in;
    tt_status status;
    out->final_right = out->first_right = reward > 0.5f;
    first.response_size = tti_reflection_at(in->response);
    if (first.response_size == in->response_size) { return tti_attempted(ctx, task, in, &out->attempted); }
    out->reflects = 1;
    out->behaviour = tti_behaviour_by_words(in->response + first.response_size);
    attempt.ctx = ctx;
    TTI_TRY(tt_text_append(&attempt, in->response, first.response_size));
    first.response = attempt.data;
    first.stopped = 1;
    TTI_TRY(tti_attempted(ctx, task, &first, &out->attempted));
    TTI_TRY(task->reward(task->user, &first, &reward));
    out->first_right = reward > 0.5f;
done:
    tt_text_free(&attempt);
    return status;
}

/* Without an attempt there is nothing to be right, or to reflect on. */
static void tti_without_attempt(tt_outcome *out) {
    if (out->attempted) { return; }
    out->first_right = 0;
    if (out->reflects) { out->behaviour = TT_WORKS_FIRST; }
    out->reflects = 0;
}

TT_API tt_status tt_judge(tt_context *ctx, const tt_task *task, const tt_reward_input *in, float reward,
                          tt_reward_errors *errors, tt_outcome *out) {
    tt_status status;
    memset(out, 0, sizeof *out);
    if (isnan(reward)) { return TT_OK; }
    tt_error_clear(ctx);      /* an older error is not the judge's reason */
    status = task->judge ? task->judge(task->user, in, out) : tti_judge_by_reward(ctx, task, in, reward, out);
    tti_without_attempt(out);
    if (status == TT_OK || tti_stops_run(status)) { return status; }
    memset(out, 0, sizeof *out);
    tti_reward_failed(ctx, errors, task->name, in, status);
    return TT_OK;
}

TT_API void tt_tally_add(tt_tally *t, const tt_outcome *o, int length, int stopped) {
    t->n++;
    t->right += o->final_right;
    t->attempts += o->attempted;
    t->first += o->first_right;
    t->reflects += o->reflects;
    t->corrected += o->attempted && o->final_right && !o->first_right;
    t->spoiled += o->first_right && !o->final_right;
    t->length += length;
    t->stopped += stopped;
    t->behaviour[o->behaviour]++;
}

TT_API tt_rates tt_tally_rates(const tt_tally *t) {
    tt_rates r;
    int i;
    r.accuracy = tti_ratio(t->right, t->n);
    r.attempt_rate = tti_ratio(t->attempts, t->n);
    r.first_accuracy = tti_ratio(t->first, t->n);
    r.reflection_rate = tti_ratio(t->reflects, t->n);
    r.correction_rate = tti_ratio(t->corrected, t->attempts - t->first);
    r.spoil_rate = tti_ratio(t->spoiled, t->first);
    r.mean_length = tti_ratio(t->length, t->n);
    r.stopped_rate = tti_ratio(t->stopped, t->n);
    for (i = 0; i < TT_N_BEHAVIOURS; i++) { r.behaviour[i] = tti_ratio(t->behaviour[i], t->n); }
    return r;
}

/* ---- [tt:train.ranks] more than one process ----
 * Sums of floats depend on their order, so the order is fixed: the gradients g of the parts are summed as a
 * binary tree over the part numbers, of which each rank sums whole branches and the hook the rest. Of 8 parts
 * one rank has all, two ranks a half each, four a quarter:
 *     ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))
 * Partial sums wait as the digits of a binary counter do: levels[l] holds that of 2^l parts until as many
 * have come. So n parts on a rank need log2(n) buffers, and every number of ranks gives the same bits. */

enum { TTI_MAX_LEVELS = 31, TTI_LEAST_ROOM = 1024 };

struct tt_reducer {
    tt_context *ctx;
    const tt_backend *backend;
    tt_reducer_desc desc;             /* resolved                                            */
    size_t size;                      /* values of all gradients                             */
    size_t room;                      /* size, or more if there are hardly any               */
    float *flat;                      /* [room] what the hook sums; NULL without a hook      */
    float *levels[TTI_MAX_LEVELS];    /* [size] each                                         */
    int n_levels, n_added;
};

TT_API void tt_reducer_destroy(tt_reducer *r) {
    int i;
    if (!r) { return; }
    if (r->flat) { r->backend->free(r->ctx, r->flat, r->room * sizeof(float)); }
    for (i = 0; i < r->n_levels; i++) {
        if (r->levels[i]) { r->backend->free(r->ctx, r->levels[i], r->size * sizeof(float)); }
    }
    tt_free(r->ctx, r, 1, sizeof *r);
}

/* Equal bits for any number of ranks take parts that do not depend on it: a power of two, because
 * gradients are summed as a tree, and as many on each rank. */
static tt_status tti_reducer_check(tt_context *ctx, tt_reducer_desc *d) {
    if (d->world_size == 0) { d->world_size = 1; }
    if (d->world_size < 1 || d->rank < 0 || d->rank >= d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_reducer_create: rank is %d of world_size %d, expected 0 <= rank < world_size",
                       d->rank, d->world_size);
    }
    if (d->world_size > 1 && !d->allreduce) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_reducer_create: world_size is %d, expected 1 without allreduce",
                       d->world_size);
    }
    if (d->n_parts == 0) {      /* whatever number that is: no promise of equal bits then */
        d->n_parts = d->world_size;
        return TT_OK;
    }
    if (d->n_parts < 1 || (d->n_parts & (d->n_parts - 1)) || d->n_parts % d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_reducer_create: n_parts is %d, expected a power of two and a multiple of "
                       "world_size %d",
                       d->n_parts, d->world_size);
    }
    return TT_OK;
}

/* All memory is taken here: levels for log2 of the rank's parts, and one flat buffer, for a hook is quickest
 * with one message. A model with hardly any parameters still gets room for a message of numbers. */
TT_API tt_reducer *tt_reducer_create(tt_context *ctx, const tt_reducer_desc *desc) {
    tt_reducer_desc d = *desc;
    tt_reducer *r;
    int i, ok = 1;
    if (!d.model) {
        tt_fail(ctx, TT_ERR_ARG, "tt_reducer_create: model is NULL");
        return NULL;
    }
    if (tti_reducer_check(ctx, &d) != TT_OK) { return NULL; }
    r = (tt_reducer *)tt_alloc(ctx, 1, sizeof *r);
    if (!r) { return NULL; }
    r->ctx = ctx;
    r->backend = tt_backend_get(ctx);
    r->desc = d;
    for (i = 0; i < tt_model_n_params(d.model); i++) {
        const tt_tensor *p = tt_model_param(d.model, i);
        r->size += p->requires_grad ? p->size : 0;
    }
    r->room = r->size > TTI_LEAST_ROOM ? r->size : (size_t)TTI_LEAST_ROOM;
    if (d.allreduce) { ok = (r->flat = (float *)r->backend->alloc(ctx, r->room * sizeof(float))) != NULL; }
    for (i = d.n_parts / d.world_size; ok && i > 1; i /= 2) {
        ok = (r->levels[r->n_levels++] = (float *)r->backend->alloc(ctx, r->size * sizeof(float))) != NULL;
    }
    if (ok) { return r; }
    tt_reducer_destroy(r);
    return NULL;
}

TT_API const tt_reducer_desc *tt_reducer_desc_get(const tt_reducer *r) { return &r->desc; }

/* One pass over all gradients and their places in a flat buffer: moved there, brought back, or added to. */
typedef enum tti_flat { TTI_FLAT_STORE, TTI_FLAT_LOAD, TTI_FLAT_ADD } tti_flat;

/* All gradients side by side in one array, which goes from rank to rank; or back, or added to them. */
static tt_status tti_reducer_flat(tt_reducer *r, float *flat, tti_flat what) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < tt_model_n_params(r->desc.model) && status == TT_OK; i++) {
        tt_tensor *p = tt_model_param(r->desc.model, i);
        float *grad;
        if (!p->requires_grad) { continue; }
        grad = tt_grad(p);
        if (!grad) { return TT_ERR_MEM; }
        if (what == TTI_FLAT_STORE) {
            status = r->backend->copy(r->ctx, flat, grad, p->size * sizeof(float));
        } else if (what == TTI_FLAT_LOAD) {
            status = r->backend->copy(r->ctx, grad, flat, p->size * sizeof(float));
        } else {
            status = r->backend->axpy(r->ctx, grad, flat, 1, p->size);
        }
        flat += p->size;
    }
    return status;
}

/* The gradients hold part number n_added. Each trailing zero bit of that number is a carry: the branch that
 * waits on this level is complete and joins. What then stands in the gradients waits in its turn, but for the
 * last part: its sum is the rank's, and stays. */
TT_API tt_status tt_reducer_add(tt_reducer *r) {
    int n = r->desc.n_parts / r->desc.world_size, level = 0, count = ++r->n_added;
    tt_status status = TT_OK;
    if (count > n) {
        return tt_fail(r->ctx, TT_ERR_ARG,
                       "tt_reducer_add: part %d, expected %d of n_parts %d on each of %d ranks", count, n,
                       r->desc.n_parts, r->desc.world_size);
    }
    for (; count % 2 == 0 && status == TT_OK; count /= 2) {
        status = tti_reducer_flat(r, r->levels[level++], TTI_FLAT_ADD);
    }
    if (r->n_added == n || status != TT_OK) { return status; }
    status = tti_reducer_flat(r, r->levels[level], TTI_FLAT_STORE);
    tt_model_zero_grad(r->desc.model);
    return status;
}

TT_API tt_status tt_reducer_sum(tt_reducer *r) {
    int n = r->desc.n_parts / r->desc.world_size, added = r->n_added;
    tt_status status;
    r->n_added = 0;
    if (added != n) {
        return tt_fail(r->ctx, TT_ERR_ARG, "tt_reducer_sum: %d parts were added, expected %d", added, n);
    }
    if (!r->desc.allreduce) { return TT_OK; }
    TTI_TRY(tti_reducer_flat(r, r->flat, TTI_FLAT_STORE));
    TTI_TRY(r->desc.allreduce(r->desc.user, r->flat, r->size));
    TTI_TRY(tti_reducer_flat(r, r->flat, TTI_FLAT_LOAD));
done:
    return status;
}

/* Host values through the hook, in pieces that fit into the flat buffer. */
static tt_status tti_reducer_host(tt_reducer *r, float *values, size_t n) {
    tt_status status = TT_OK;
    while (n > 0) {
        size_t piece = n < r->room ? n : r->room;
        TTI_TRY(r->backend->upload(r->ctx, r->flat, values, piece * sizeof(float)));
        TTI_TRY(r->desc.allreduce(r->desc.user, r->flat, piece));
        TTI_TRY(r->backend->download(r->ctx, values, r->flat, piece * sizeof(float)));
        values += piece;
        n -= piece;
    }
done:
    return status;
}

/* The hook sums, but a sum in which one rank alone has something is a copy: each rank fills its own place,
 * the others have zeros there. A double of 53 bits is the sum of three floats of 24, x = high + middle + low,
 * each of which is what the ones before have left over; an infinity or NaN is high alone. */
TT_API tt_status tt_reducer_gather(tt_reducer *r, const double *mine, int n, double *all) {
    size_t count = (size_t)n, total = count * (size_t)r->desc.world_size, i;
    float *thirds, *own;
    tt_status status;
    if (r->desc.world_size == 1) {
        memcpy(all, mine, count * sizeof *all);
        return TT_OK;
    }
    thirds = (float *)tt_alloc(r->ctx, 3 * total, sizeof *thirds);
    if (!thirds) { return TT_ERR_MEM; }
    own = thirds + 3 * count * (size_t)r->desc.rank;
    for (i = 0; i < count; i++) {
        float high = (float)mine[i], middle = isfinite(high) ? (float)(mine[i] - (double)high) : 0;
        own[3 * i] = high;
        own[3 * i + 1] = middle;
        own[3 * i + 2] = isfinite(high) ? (float)(mine[i] - (double)high - (double)middle) : 0;
    }
    status = tti_reducer_host(r, thirds, 3 * total);
    for (i = 0; i < total && status == TT_OK; i++) {
        all[i] = (double)thirds[3 * i] + (double)thirds[3 * i + 1] + (double)thirds[3 * i + 2];
    }
    tt_free(r->ctx, thirds, 3 * total, sizeof *thirds);
    return status;
}

/* What a rank must know of the others is little: sums of counts and of denominators. Of n values over all
 * ranks: the sums in the order of the ranks, of the last n_largest the largest. */
static tt_status tti_over_ranks(tt_reducer *r, double *values, int n, int n_largest) {
    int world = r->desc.world_size, rank, i;
    double *all = (double *)tt_alloc(r->ctx, (size_t)n * (size_t)world, sizeof *all);
    tt_status status = all ? tt_reducer_gather(r, values, n, all) : TT_ERR_MEM;
    for (i = 0; i < n && status == TT_OK; i++) {
        values[i] = all[i];
        for (rank = 1; rank < world; rank++) {
            double x = all[rank * n + i];
            values[i] = i < n - n_largest ? values[i] + x : x > values[i] ? x : values[i];
        }
    }
    tt_free(r->ctx, all, (size_t)n * (size_t)world, sizeof *all);
    return status;
}

/* ---- [tt:train.metrics] metrics ----
 * The one list of them: name in the JSON (NULL = not there), place, and how the number of a step comes about.
 * The losses measure each part of a mini-batch, with denominators that are those of the whole mini-batch. */

typedef enum tti_how {
    TTI_MEAN,      /* added up over the parts of a mini-batch, a mean over the mini-batches of a pass  */
    TTI_SUM,       /* added up over the parts of all mini-batches of a pass                            */
    TTI_MAX,       /* the largest of any part                                                          */
    TTI_MIN,       /* the least of any part; it is > 0, and 0 that of a part without tokens            */
    TTI_COUNTED,     /* counted by each rank, added up over ranks: whole numbers, exact in any order     */
    TTI_SAME,      /* found from all responses, by every rank the same                                 */
    TTI_TIMING     /* of this rank alone; not part of what is compared between runs                    */
} tti_how;

typedef struct tti_metric {
    const char *name;
    size_t at;                 /* of a double in tt_step_metrics */
    tti_how how;
} tti_metric;

#define TTI_METRIC(field, how, name) {name, offsetof(tt_step_metrics, field), how}
static const tti_metric tti_metrics[] = {
    TTI_METRIC(grpo.reward, TTI_SAME, "reward"),
    TTI_METRIC(grpo.reward_std, TTI_SAME, "reward_std"),
    TTI_METRIC(grpo.frac_reward_zero_std, TTI_SAME, "frac_reward_zero_std"),
    TTI_METRIC(mean_length, TTI_SAME, "completions/mean_length"),
    TTI_METRIC(clipped_ratio, TTI_SAME, "completions/clipped_ratio"),
    TTI_METRIC(grpo.loss, TTI_MEAN, "loss"),
    TTI_METRIC(grpo.entropy, TTI_MEAN, "entropy"),
    TTI_METRIC(grpo.kl, TTI_MEAN, "kl"),
    TTI_METRIC(grpo.ppo_kl, TTI_MEAN, "ppo_kl"),
    TTI_METRIC(grpo.clip_low, TTI_MEAN, "clip_ratio/low_mean"),
    TTI_METRIC(grpo.clip_high, TTI_MEAN, "clip_ratio/high_mean"),
    TTI_METRIC(grpo.clip_dual, TTI_MEAN, "clip_ratio/dual_mean"),
    TTI_METRIC(grpo.sampling_logp_difference_max, TTI_MAX, "sampling/sampling_logp_difference/max"),
    TTI_METRIC(grpo.mismatch_mean, TTI_MEAN, "sampling/importance_sampling_ratio/mean"),
    TTI_METRIC(grpo.mismatch_deviation_max, TTI_MAX, "sampling/importance_sampling_ratio/max_deviation"),
    TTI_METRIC(grpo.ratio_mean, TTI_MEAN, "sampling/raw_ratio/mean"),
    TTI_METRIC(grpo.ratio_min, TTI_MIN, "sampling/raw_ratio/min"),
    TTI_METRIC(grpo.ratio_max, TTI_MAX, "sampling/raw_ratio/max"),
    TTI_METRIC(grpo.ratio_outside, TTI_MEAN, "sampling/raw_ratio/outside"),
    TTI_METRIC(grpo.overlong, TTI_SAME, "rewards/overlong/mean"),
    TTI_METRIC(grpo.reward_kl, TTI_SAME, "rewards/kl/mean"),
    TTI_METRIC(grpo.n_unscored, TTI_SAME, "n_unscored"),
    TTI_METRIC(reward_errors, TTI_COUNTED, "reward_errors"),
    TTI_METRIC(n_resampled, TTI_COUNTED, "n_resampled"),
    TTI_METRIC(n_off_policy_cut, TTI_COUNTED, "off_policy/cut"),
    TTI_METRIC(update_skipped, TTI_SAME, "update_skipped"),
    TTI_METRIC(rollout_tokens, TTI_COUNTED, "rollout_tokens"),
    TTI_METRIC(think.teacher_tokens, TTI_COUNTED, "think/teacher_tokens"),
    TTI_METRIC(grad_norm, TTI_SAME, "grad_norm"),
    TTI_METRIC(learning_rate, TTI_SAME, "learning_rate"),
    TTI_METRIC(num_tokens, TTI_SAME, "num_tokens"),
    TTI_METRIC(think.pct, TTI_SAME, "think/pct"),
    TTI_METRIC(think.guided_share, TTI_SAME, "think/guided_share"),
    TTI_METRIC(think.teacher_accuracy, TTI_SAME, "think/teacher_accuracy"),
    TTI_METRIC(think.rescue_rate, TTI_SAME, "think/rescue_rate"),
    TTI_METRIC(think.spoil_rate, TTI_SAME, "think/spoil_rate"),
    TTI_METRIC(think.guided_reward, TTI_SAME, "think/guided_reward"),
    TTI_METRIC(think.own_reward, TTI_SAME, "think/own_reward"),
    TTI_METRIC(think.n_cut, TTI_COUNTED, "think/cut"),
    TTI_METRIC(think.n_skipped, TTI_COUNTED, "think/skipped"),
    TTI_METRIC(attempt_rate, TTI_SAME, "think/attempt_rate"),
    TTI_METRIC(reflection_rate, TTI_SAME, "think/reflection_rate"),
    TTI_METRIC(correction_rate, TTI_SAME, "think/correction_rate"),
    TTI_METRIC(spoil_rate, TTI_SAME, "think/own_spoil_rate"),
    TTI_METRIC(behaviour[TT_SELF_AGREEMENT], TTI_SAME, "think/self_agreement"),
    TTI_METRIC(behaviour[TT_SELF_CONFLICT], TTI_SAME, "think/self_conflict"),
    TTI_METRIC(behaviour[TT_SELF_CONSULTATION], TTI_SAME, "think/self_consultation"),
    TTI_METRIC(behaviour[TT_SELF_CRITIQUE], TTI_SAME, "think/self_critique"),
    TTI_METRIC(behaviour[TT_WORKS_FIRST], TTI_SAME, "think/works_first"),
    TTI_METRIC(grpo.aas_fallback_share, TTI_MEAN, "think/aas_fallback_share"),
    TTI_METRIC(grpo.aas_factor_mean, TTI_MEAN, "think/aas_factor_mean"),
    TTI_METRIC(grpo.aas_factor_max, TTI_MAX, "think/aas_factor_max"),
    TTI_METRIC(grpo.n_tokens, TTI_SUM, NULL),
    TTI_METRIC(grpo.n_guided_tokens, TTI_SUM, NULL),
    TTI_METRIC(update_tokens, TTI_COUNTED, NULL),
    TTI_METRIC(rollout_s, TTI_TIMING, "rollout_s"),
    TTI_METRIC(teacher_s, TTI_TIMING, "teacher_s"),
    TTI_METRIC(update_s, TTI_TIMING, "update_s"),
    TTI_METRIC(step_s, TTI_TIMING, "step_time"),
    TTI_METRIC(rollout_tokens_per_s, TTI_TIMING, "rollout_tokens_per_s"),
    TTI_METRIC(teacher_tokens_per_s, TTI_TIMING, "teacher_tokens_per_s"),
    TTI_METRIC(update_tokens_per_s, TTI_TIMING, "update_tokens_per_s")
};
enum { TTI_N_METRICS = (int)(sizeof tti_metrics / sizeof *tti_metrics) };

static double *tti_metric_at(tt_step_metrics *m, int k) {
    return (double *)(void *)((char *)m + tti_metrics[k].at);
}

/* Adds up what the parts of a mini-batch have measured: rows [n_parts, TTI_N_METRICS], whole rows although
 * few columns are measured. In the order of the parts, so that the sums depend on their number alone, not on
 * the ranks that they lay on. A comparison with NaN is false, so a NaN never is the largest. */
static void tti_metrics_add(tt_step_metrics *m, const double *rows, int n_parts) {
    int i, k;
    for (k = 0; k < TTI_N_METRICS; k++) {
        double *to = tti_metric_at(m, k), sum = 0, most = *to, least = *to;
        for (i = 0; i < n_parts; i++) {
            double x = rows[i * TTI_N_METRICS + k];
            sum += x;
            if (x > most) { most = x; }
            if (x > 0 && (least == 0 || x < least)) { least = x; }
        }
        if (tti_metrics[k].how == TTI_MAX) { *to = most; }
        if (tti_metrics[k].how == TTI_MIN) { *to = least; }
        if (tti_metrics[k].how == TTI_MEAN || tti_metrics[k].how == TTI_SUM) { *to += sum; }
    }
}

/* Sums over n mini-batches, each a mean over its own tokens, become means over the mini-batches. */
static void tti_metrics_divide(tt_step_metrics *m, double n) {
    int k;
    for (k = 0; k < TTI_N_METRICS; k++) {
        if (tti_metrics[k].how == TTI_MEAN) { *tti_metric_at(m, k) /= n; }
    }
}

/* All timings, or all other metrics, in the order of the table. A number that is not finite becomes null. */
static tt_status tti_metrics_append(tt_text *out, const tt_step_metrics *m, int timings) {
    tt_step_metrics copy = *m;
    tt_status status = TT_OK;
    int k;
    for (k = 0; k < TTI_N_METRICS && status == TT_OK; k++) {
        if (!tti_metrics[k].name || (tti_metrics[k].how == TTI_TIMING) != timings) { continue; }
        status = tt_text_format(out, ",\"%s\":%r", tti_metrics[k].name, *tti_metric_at(&copy, k));
    }
    return status;
}

/* ,"rewards/<name>/mean":value, a mean over the responses that have this reward. The name is the user's and
 * may need escapes. */
static tt_status tti_metrics_reward(tt_text *out, const char *reward, double value) {
    tt_text name = TT_INIT;
    tt_status status;
    name.ctx = out->ctx;
    TTI_TRY(tt_text_format(&name, "rewards/%s/mean", reward));
    TTI_TRY(tt_text_append(out, ",", 1));
    TTI_TRY(tt_text_json(out, name.data, name.size));
    TTI_TRY(tt_text_format(out, ":%r", value));
done:
    tt_text_free(&name);
    return status;
}

/* Names of the trainer's own first, then those that the rewards give themselves, then timings, which differ
 * from run to run; without these, two runs of the same seed give the same bytes. */
TT_API tt_status tt_metrics_json(const tt_step_metrics *m, tt_text *out) {
    tt_status status;
    int k;
    TTI_TRY(tt_text_format(out, "{\"step\":%d,\"think/n_guided\":%d,\"think/n_eligible\":%d", m->step,
                           m->think.n_guided, m->think.n_eligible));
    TTI_TRY(tti_metrics_append(out, m, 0));
    for (k = 0; k < m->n_rewards; k++) {
        TTI_TRY(tti_metrics_reward(out, m->reward_names[k], m->grpo.rewards[k]));
    }
    if (m->step_s > 0) { TTI_TRY(tti_metrics_append(out, m, 1)); }
    TTI_TRY(tt_text_append(out, "}", 1));
done:
    return status;
}

/* ---- [tt:train.create] the trainer ----
 * The desc is resolved and checked once, so that a step may divide without asking. Task, teacher and rewards
 * are copied; models, tokenizer, tensors beside and users' pointers are lent. */

enum { TTI_TROUBLE_NUMBER, TTI_TROUBLE_REWARD, TTI_TROUBLE_ENTROPY, TTI_N_TROUBLES };

struct tt_trainer {
    tt_context *ctx;
    tt_trainer_desc desc;             /* resolved                                                      */
    tt_task task;                     /* copies: the caller's may go                                   */
    tt_teacher teacher;
    tt_reward rewards[TT_MAX_REWARDS];    /* the task's first                                          */
    float weights[TT_MAX_REWARDS];
    int n_rewards;
    tt_optimizer *optimizer;
    tt_model *reference;              /* own copy; NULL if lent or not needed                          */
    tt_reducer *reducer;
    tt_rollouts rollouts;             /* of the last step, this rank's                                 */
    int end_token, step;
    int stepping;                     /* 1 within tt_trainer_step                                      */
    int troubles[TTI_N_TROUBLES];     /* steps in a row with each                                      */
    double num_tokens;
    uint64_t refused;                 /* hash of the sentence with which a state was last refused      */
};

TT_API void tt_trainer_destroy(tt_trainer *t) {
    if (!t) { return; }
    tt_rollouts_free(&t->rollouts);
    tt_reducer_destroy(t->reducer);
    tt_optimizer_destroy(t->optimizer);
    tt_model_destroy(t->reference);
    tt_free(t->ctx, t, 1, sizeof *t);
}

/* What a rank tells the others of a response: a row of numbers, the rewards last. */
enum { TTI_LENGTH, TTI_STOPPED, TTI_GUIDED, TTI_OFF_POLICY, TTI_ATTEMPT_REWARD, TTI_KL_COST, TTI_REWARDS,
       TTI_MAX_ROW = TTI_REWARDS + TT_MAX_REWARDS };

/* Sentences of the checks: which field, its value, what was expected of it. */
static tt_status tti_check_least(tt_context *ctx, const char *name, int value, int least) {
    if (value >= least) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: %s is %d, expected >= %d", name, value, least);
}

static tt_status tti_check_divisor(tt_context *ctx, const char *name, int value, const char *of,
                                   int prompts) {
    if (value >= 1 && prompts % value == 0) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: %s is %d, expected a divisor of the %s %d prompts",
                   name, value, of, prompts);
}

/* A step's prompts divide into ranks, a rank's into mini-batches, these over all ranks into parts. */
static tt_status tti_trainer_check_batch(tt_context *ctx, tt_trainer_desc *d) {
    tt_status status;
    int own, whole, parts;
    if (d->prompts_per_step == 0) { d->prompts_per_step = 16; }
    if (d->world_size == 0) { d->world_size = 1; }
    parts = d->gradient_parts == 0 ? d->world_size : d->gradient_parts;
    TTI_TRY(tti_check_least(ctx, "world_size", d->world_size, 1));
    if (d->prompts_per_step < 1 || d->prompts_per_step % d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: prompts_per_step is %d, expected a multiple of world_size %d",
                       d->prompts_per_step, d->world_size);
    }
    if (d->prompts_per_step > INT_MAX / TTI_MAX_ROW / d->grpo.num_generations) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: prompts_per_step %d x num_generations %d is too large",
                       d->prompts_per_step, d->grpo.num_generations);
    }
    own = d->prompts_per_step / d->world_size;
    TTI_TRY(tti_check_divisor(ctx, "num_mini_batches", d->grpo.num_mini_batches, "rank's", own));
    whole = d->prompts_per_step / d->grpo.num_mini_batches;
    TTI_TRY(tti_check_divisor(ctx, "gradient_parts", parts, "mini-batch's", whole));
done:
    return status;
}

/* Beyond TT_MAX_LR an update would be refused, so it is said before the run. */
static tt_status tti_schedule_check(tt_context *ctx, const tt_schedule *s) {
    double most = (double)TT_MAX_LR;
    if (!(s->lr > 0 && (double)s->lr <= most)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: schedule.lr is %g, expected > 0 and at most %g",
                       (double)s->lr, most);
    }
    if (!(s->min_lr >= 0 && (double)s->min_lr <= most)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: schedule.min_lr is %g, expected 0 .. %g",
                       (double)s->min_lr, most);
    }
    if (s->warmup_steps < 0 || s->total_steps < 0) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: schedule.warmup_steps is %d and total_steps %d, expected >= 0",
                       s->warmup_steps, s->total_steps);
    }
    if ((int)s->type < 0 || (int)s->type > TT_COSINE) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: schedule.type is %d, expected TT_CONSTANT, TT_LINEAR or TT_COSINE",
                       (int)s->type);
    }
    return TT_OK;
}

/* Fills in defaults; an error names field, value and what was expected. */
static tt_status tti_trainer_check(tt_context *ctx, tt_trainer_desc *d) {
    int positions = tt_model_config_get(d->model)->max_position_embeddings;
    tt_grpo_config *c = &d->grpo;
    tt_status status;
    TTI_TRY(tt_grpo_check(ctx, c));
    *c = tt_grpo_resolve(c);
    if (c->num_iterations == 0) { c->num_iterations = 1; }
    if (c->num_mini_batches == 0) { c->num_mini_batches = 1; }
    if (c->micro_batch_tokens == 0) { c->micro_batch_tokens = 8192; }
    if (d->abort_entropy == 0) { d->abort_entropy = 0.001f; }
    if (d->off_policy && d->n_off_policy == 0) { d->n_off_policy = 1; }
    TTI_TRY(tti_check_least(ctx, "micro_batch_tokens", c->micro_batch_tokens, 1));
    if (c->max_completion_length >= positions) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: max_completion_length is %d, expected 1 .. "
                       "max_position_embeddings %d - 1", c->max_completion_length, positions);
    }
    TTI_TRY(tti_trainer_check_batch(ctx, d));
    TTI_TRY(tti_schedule_check(ctx, &d->schedule));
    TTI_TRY(tti_check_least(ctx, "max_batch", d->max_batch, 0));
    if (d->teacher && !d->teacher->feedback) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: teacher.feedback is NULL");
    }
    if (d->teacher) { TTI_TRY(tti_check_least(ctx, "think.total_steps", d->think.total_steps, 1)); }
    if (d->teacher && d->think.refine && (d->off_policy || c->num_generations < 2)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: think.refine with num_generations %d%s, expected "
                       ">= 2, for the last samples give way to new answers", c->num_generations,
                       d->off_policy ? " and off_policy" : "");
    }
    if (d->n_rewards < 0 || d->n_rewards >= TT_MAX_REWARDS || (d->n_rewards > 0 && !d->rewards)) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: n_rewards is %d, expected 0 .. %d with as many rewards",
                       d->n_rewards, TT_MAX_REWARDS - 1);
    }
    if (d->n_off_policy < 0 || d->n_off_policy >= c->num_generations ||
        (d->n_off_policy > 0 && !d->off_policy)) {
        return tt_fail(ctx, TT_ERR_ARG,
                       "tt_trainer_create: n_off_policy is %d, expected 0 .. num_generations %d - 1, "
                       "with off_policy",
                       d->n_off_policy, c->num_generations);
    }
done:
    return status;
}

/* Reads all training questions, so that one that is too long is named now and not after hours. A task without
 * end cannot be read. */
static tt_status tti_trainer_check_questions(tt_context *ctx, const tt_trainer_desc *d) {
    int n = d->task->count ? d->task->count(d->task->user, 0) : 0, i;
    int new_tokens = d->grpo.max_completion_length;
    int positions = tt_model_config_get(d->model)->max_position_embeddings;
    tt_prompts prompts;
    tt_status status = tt_prompts_create(ctx, d->task, d->tokenizer, 1, &prompts);
    for (i = 0; i < n && status == TT_OK; i++) {
        prompts.texts.size = prompts.ids.size = 0;
        TTI_TRY(tt_prompts_set(&prompts, 0, 0, (uint64_t)i));
        if (prompts.requests[0].prompt_length <= positions - new_tokens) { continue; }
        status = tt_fail(ctx, TT_ERR_ARG,
                         "tt_trainer_create: question %d (\"%.40s\") makes a prompt of %d tokens, which "
                         "leaves no room for %d new ones in max_position_embeddings %d; see tt_jsonl_limit",
                         i, tt_prompts_question(&prompts, 0), prompts.requests[0].prompt_length, new_tokens,
                         positions);
    }
done:
    tt_prompts_free(&prompts);
    return status;
}

/* All rewards with their weights: the task's, then those of the desc. */
static tt_status tti_trainer_rewards(tt_trainer *t) {
    int k;
    t->rewards[0].name = t->task.name;
    t->rewards[0].reward = t->task.reward;
    t->rewards[0].user = t->task.user;
    t->weights[0] = t->desc.task_weight != 0 ? t->desc.task_weight : 1;
    t->n_rewards = 1 + t->desc.n_rewards;
    for (k = 1; k < t->n_rewards; k++) {
        const tt_reward *r = &t->desc.rewards[k - 1];
        if (!r->reward || !r->name) {
            return tt_fail(t->ctx, TT_ERR_ARG, "tt_trainer_create: rewards[%d].%s is NULL", k - 1,
                           r->name ? "reward" : "name");
        }
        t->rewards[k] = *r;
        t->weights[k] = r->log_only ? 0 : r->weight != 0 ? r->weight : 1;
    }
    t->desc.rewards = NULL;      /* the caller's may go */
    return TT_OK;
}

/* The reference policy is only kept if something asks for it: it costs the memory of a model. With adapters
 * it is the model itself, these off; else a frozen copy of the model as it is now. */
static int tti_trainer_reference(tt_trainer *t) {
    tt_trainer_desc *d = &t->desc;
    if (d->reference || (d->grpo.beta == 0 && !d->measure_kl)) { return 1; }
    if (tt_model_lora_get(d->model)) {
        d->reference = d->model;
    } else {
        d->reference = t->reference = tt_model_copy(d->model);
    }
    return d->reference != NULL;
}

static tt_reducer *tti_trainer_reducer(tt_context *ctx, const tt_trainer_desc *d) {
    tt_reducer_desc r = TT_INIT;
    r.model = d->model;
    r.allreduce = d->allreduce;
    r.user = d->allreduce_user;
    r.rank = d->rank;
    r.world_size = d->world_size;
    r.n_parts = d->gradient_parts;
    return tt_reducer_create(ctx, &r);
}

/* All checks come first: a run of hours must not end at its first step for a wrong number. The optimizer is
 * made for the parameters that require a gradient now, so adapters are added before. */
TT_API tt_trainer *tt_trainer_create(tt_context *ctx, const tt_trainer_desc *desc) {
    tt_trainer *t;
    tt_trainer_desc d = *desc;
    int end;
    if (!d.model) {
        tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: model is NULL");
        return NULL;
    }
    if (tt_task_check(d.model, d.tokenizer, d.task, "tt_trainer_create", &end) != TT_OK ||
        tti_trainer_check(ctx, &d) != TT_OK || tti_trainer_check_questions(ctx, &d) != TT_OK) {
        return NULL;
    }
    t = (tt_trainer *)tt_alloc(ctx, 1, sizeof *t);
    if (!t) { return NULL; }
    t->ctx = ctx;
    t->desc = d;
    t->task = *d.task;
    t->desc.task = &t->task;
    if (d.teacher) {
        t->teacher = *d.teacher;
        t->desc.teacher = &t->teacher;
    }
    t->end_token = end;
    if (tti_trainer_rewards(t) == TT_OK) { t->optimizer = tt_adamw_create(d.model, &d.adamw); }
    if (t->optimizer) { t->reducer = tti_trainer_reducer(ctx, &d); }
    if (t->reducer && tti_trainer_reference(t)) { return t; }
    tt_trainer_destroy(t);
    return NULL;
}

TT_API int tt_trainer_step_count(const tt_trainer *t) { return t->step; }
TT_API const tt_rollouts *tt_trainer_rollouts(const tt_trainer *t) { return &t->rollouts; }

/* ---- [tt:train.sample] a step's first half: ask, sample, off-policy, reward, teach ----
 * This is done in rounds. The first asks a question for every group; with dynamic sampling, those of the
 * groups whose rewards came out all equal, which have no gradient, are asked other questions in further ones
 * (DAPO, arXiv 2503.14476, sec. 3.2). Question numbers and the sampler's streams are functions of (seed,
 * step, place in the step, round) alone. */

typedef struct tti_step {
    tt_prompts prompts;               /* [groups of this rank]                          */
    int *groups;                      /* [n] which of them the round is about           */
    tt_rollouts round;                /* of the round, group by group                   */
    tt_tally tally;                   /* of the student's own responses                 */
    tt_reward_errors errors;
    tt_step_metrics metrics;
} tti_step;

/* Where group i of a rank stands in the step: each mini-batch is spread over the ranks, so it holds the same
 * groups at any number of them. */
static int tti_group_place(const tt_trainer *t, int rank, int i) {
    int whole = t->desc.prompts_per_step / t->desc.grpo.num_mini_batches, own = whole / t->desc.world_size;
    return i / own * whole + rank * own + i % own;
}

/* Questions for the n groups of the round become prompts. The request's id names the random stream of its
 * samples; it is another one in every round, or a group would be given the responses that it already had. */
static tt_status tti_step_ask(tt_trainer *t, tti_step *s, int n, int round) {
    const tt_trainer_desc *d = &t->desc;
    uint64_t stream = (uint64_t)TTI_TRAIN_PROMPT + ((uint64_t)round << 32);
    uint64_t first = (uint64_t)t->step * (uint64_t)d->prompts_per_step;
    tt_status status = TT_OK;
    int k;
    for (k = 0; k < n && status == TT_OK; k++) {
        int g = s->groups[k];
        uint64_t place = first + (uint64_t)tti_group_place(t, d->rank, g);
        tt_request *request = &s->prompts.requests[g];
        status = tt_prompts_set(&s->prompts, g, 0, tt_random(d->seed, stream, place) >> 1);
        request->id = ((uint64_t)round << 48) + place;
        request->n = d->grpo.num_generations;
    }
    return status;
}

/* The requests of the round's groups, each of which must leave room for a response. */
static tt_status tti_step_requests(tt_trainer *t, const tti_step *s, tt_request *requests, int n) {
    int limit = tt_model_config_get(t->desc.model)->max_position_embeddings, k;
    int new_tokens = t->desc.grpo.max_completion_length;
    for (k = 0; k < n; k++) {
        requests[k] = s->prompts.requests[s->groups[k]];
        if (requests[k].prompt_length <= limit - new_tokens) { continue; }
        return tt_fail(t->ctx, TT_ERR_ARG,
                       "tt_trainer_step: prompt %d has %d tokens and max_completion_length is %d, "
                       "expected a sum <= max_position_embeddings %d",
                       k, requests[k].prompt_length, new_tokens, limit);
    }
    return TT_OK;
}

/* num_generations responses of the student to each prompt of the round, of at most max_completion_length
 * tokens. One seed for the whole run: a response's random stream is named by its request's id and its number
 * in the group, and so depends neither on the slots of the sampler nor on the rank that samples it. */
static tt_status tti_step_sample(tt_trainer *t, tti_step *s, int n) {
    const tt_trainer_desc *d = &t->desc;
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_request *requests = (tt_request *)tt_alloc(t->ctx, (size_t)n, sizeof *requests);
    tt_status status;
    int k;
    if (!requests) { return TT_ERR_MEM; }
    sampling.max_new_tokens = d->grpo.max_completion_length;
    sampling.temperature = d->grpo.temperature;
    sampling.top_k = d->grpo.top_k;
    sampling.top_p = d->grpo.top_p;
    sampling.min_p = d->grpo.min_p;
    sampling.keep_sampling_mask = d->grpo.keep_sampling_mask;
    sampling.environment = d->environment;
    sampling.environment_user = d->environment_user;
    sampling.seed = tt_random(d->seed, TTI_TRAIN_SAMPLE, 0);
    sampling.stop_tokens = &t->end_token;
    sampling.n_stop_tokens = 1;
    sampling.max_batch = d->max_batch;
    TTI_TRY(tti_step_requests(t, s, requests, n));
    TTI_TRY(tt_generate(d->model, requests, n, &sampling, &completions));
    s->metrics.rollout_tokens += (double)completions.n_tokens;
    TTI_TRY(tt_rollouts_create(t->ctx, requests, n, &completions, t->end_token, &s->round));
    for (k = 0; k < n; k++) {
        TTI_TRY(tt_rollouts_question(&s->round, k, tt_prompts_question(&s->prompts, s->groups[k])));
    }
done:
    tt_completions_free(&completions);
    tt_free(t->ctx, requests, (size_t)n, sizeof *requests);
    return status;
}

/* The user's response number k to a question, with the end token; no ids if there is none. */
static tt_status tti_off_policy_ids(tt_trainer *t, tti_step *s, int group, int k, tt_ids *ids) {
    const tt_trainer_desc *d = &t->desc;
    const char *question = tt_prompts_question(&s->prompts, group);
    const char *answer = tt_prompts_answer(&s->prompts, group);
    size_t limit = (size_t)d->grpo.max_completion_length;
    int32_t end = (int32_t)t->end_token;
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = t->ctx;
    ids->size = 0;
    tt_eval(t->ctx);
    status = d->off_policy(d->off_policy_user, question, answer, k, &text);
    TTI_TRY(tti_called(t->ctx, status, "off_policy: response", (uint64_t)k));
    if (text.size == 0) { goto done; }
    TTI_TRY(tt_encode(d->tokenizer, text.data, text.size, TT_SPECIAL_TEXT, ids));
    TTI_TRY(tt_ids_append(ids, &end, 1));
    if (ids->size > limit) {
        ids->size = limit;
        s->metrics.n_off_policy_cut++;
    }
done:
    tt_text_free(&text);
    return status;
}

/* The user's own responses take the place of the last samples of each group (LUFFY, arXiv 2504.14945). */
static tt_status tti_step_off_policy(tt_trainer *t, tti_step *s) {
    int size = s->round.num_generations, first = size - t->desc.n_off_policy, i;
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    ids.ctx = t->ctx;
    for (i = 0; i < s->round.n; i++) {
        int k = i % size - first;
        if (k < 0) { continue; }
        TTI_TRY(tti_off_policy_ids(t, s, s->groups[i / size], k, &ids));
        if (ids.size == 0) { continue; }
        TTI_TRY(tt_rollout_off_policy(&s->round, i, ids.data, (int)ids.size, t->end_token));
    }
done:
    tt_ids_free(&ids);
    return status;
}

/* Rewards of the round's responses, and a tally of what the student's own do, before a teacher's words make
 * them better than it is. guided_only: after the teacher, of those that it has continued. r->reward is the
 * task's own for now, and so attempt_reward will be; weights and costs come in with the advantages. */
static tt_status tti_step_reward(tt_trainer *t, tti_step *s, int guided_only) {
    tt_text text = TT_INIT;
    tt_status status = TT_OK;
    int i, k;
    text.ctx = t->ctx;
    s->round.n_rewards = t->n_rewards;
    for (i = 0; i < s->round.n; i++) {
        tt_rollout *r = &s->round.items[i];
        tt_reward_input in = TT_INIT;
        tt_outcome outcome;
        if (guided_only && !r->guided) { continue; }
        in.sample = r->sample;
        in.tokens = r->tokens + r->prompt_length;
        in.n_tokens = r->response_length;
        in.stopped = r->stopped;
        TTI_TRY(tt_prompts_input(&s->prompts, s->groups[r->group], &text, &in));
        for (k = 0; k < t->n_rewards; k++) {
            TTI_TRY(tt_reward_call(t->ctx, &t->rewards[k], &in, &s->errors, &r->rewards[k]));
        }
        r->reward = r->rewards[0];
        if (guided_only || r->off_policy) { continue; }
        TTI_TRY(tt_judge(t->ctx, t->desc.task, &in, r->rewards[0], &s->errors, &outcome));
        tt_tally_add(&s->tally, &outcome, r->response_length, r->stopped);
    }
done:
    tt_text_free(&text);
    return status;
}

/* The teacher continues some responses, which are then rewarded anew; attempt_reward keeps what each had by
 * itself. The selection is a function of (think.seed, step, prompt id), so a group's choice does not depend
 * on its rank. */
static tt_status tti_step_teach(tt_trainer *t, tti_step *s) {
    const tt_trainer_desc *d = &t->desc;
    tt_think_metrics m = TT_INIT, *sum = &s->metrics.think;
    tt_augment how = TT_INIT;
    tt_status status;
    if (!d->teacher || !tt_think_active(&d->think, t->step)) { return TT_OK; }
    how.teacher = d->teacher;
    how.tokenizer = d->tokenizer;
    how.end_token = t->end_token;
    how.max_completion_length = d->grpo.max_completion_length;
    how.step = t->step;
    how.student = d->model;
    how.temperature = d->grpo.temperature;
    how.max_batch = d->max_batch;
    status = tt_think_augment(&s->round, &how, &d->think, &m);
    sum->pct = m.pct;
    sum->n_eligible += m.n_eligible;
    sum->n_guided += m.n_guided;
    sum->teacher_tokens += m.teacher_tokens;
    sum->n_cut += m.n_cut;
    sum->n_skipped += m.n_skipped;
    if (m.longest_guided > sum->longest_guided) { sum->longest_guided = m.longest_guided; }
    return status == TT_OK ? tti_step_reward(t, s, 1) : status;
}

/* One round for the n groups in s->groups, into s->round. */
static tt_status tti_step_round(tt_trainer *t, tti_step *s, int n, int round) {
    double begin, sampled;
    tt_status status;
    TTI_TRY(tti_step_ask(t, s, n, round));
    begin = tt_clock();
    TTI_TRY(tti_step_sample(t, s, n));
    TTI_TRY(tti_step_off_policy(t, s));
    TTI_TRY(tti_step_reward(t, s, 0));
    sampled = tt_clock();
    TTI_TRY(tti_step_teach(t, s));
    s->metrics.rollout_s += sampled - begin;
    s->metrics.teacher_s += tt_clock() - sampled;
done:
    return status;
}

/* Group k of the round becomes group g of the step. The two change places, arrays and all, so that each
 * tt_rollouts still owns as many of them and the old group is freed with the round. */
static void tti_replace_group(tt_trainer *t, tti_step *s, int k, int g) {
    int size = s->round.num_generations, i;
    char *question = t->rollouts.questions[g];
    t->rollouts.questions[g] = s->round.questions[k];
    s->round.questions[k] = question;
    for (i = 0; i < size; i++) {
        tt_rollout *to = &t->rollouts.items[g * size + i], *from = &s->round.items[k * size + i], was = *to;
        *to = *from;
        to->group = g;
        *from = was;
    }
}

/* Puts the groups whose rewards are all equal into s->groups; n receives how many. There R - mean = 0, and so
 * are all advantages: the group fills a place of the batch without a gradient. The reward is the weighted sum
 * with what the length costs, but without the KL, for log-probs are not there yet. */
static tt_status tti_equal_groups(tt_trainer *t, tti_step *s, int *n) {
    tt_grpo_config c = t->desc.grpo;
    tt_status status;
    int g;
    c.kl_in_reward = 0;
    *n = 0;
    status = tt_grpo_rewards(&t->rollouts, &c, t->weights, NULL);
    for (g = 0; g < t->rollouts.n_groups && status == TT_OK; g++) {
        if (tt_group_rewards(&t->rollouts, g).equal) { s->groups[(*n)++] = g; }
    }
    return status;
}

/* All rounds of the step, into t->rollouts. */
static tt_status tti_step_collect(tt_trainer *t, tti_step *s) {
    int n = s->prompts.n, round, k;
    tt_status status;
    TTI_TRY(tti_step_round(t, s, n, 0));
    tt_rollouts_free(&t->rollouts);
    t->rollouts = s->round;
    t->rollouts.share_prompts = t->desc.grpo.share_prompts;
    memset(&s->round, 0, sizeof s->round);
    for (round = 1; round <= t->desc.grpo.dynamic_sampling; round++) {
        TTI_TRY(tti_equal_groups(t, s, &n));
        if (n == 0) { break; }
        TTI_TRY(tti_step_round(t, s, n, round));
        for (k = 0; k < n; k++) { tti_replace_group(t, s, k, s->groups[k]); }
        s->metrics.n_resampled += n;
        tt_rollouts_free(&s->round);
    }
done:
    return status;
}

/* ---- [tt:train.logprobs] log-probs of the responses ----
 * log p(token | what stands before it) of each response token, at the temperature of the sampler. The graph
 * of a forward pass holds the activations of all its tokens, so the rollouts are cut into micro-batches of at
 * most micro_batch_tokens. Batches, parts and micro-batches are views: nothing is copied but tokens into the
 * graph. */

/* n rollouts from `begin` on: a mini-batch, a part of one, a micro-batch. What it shows belongs to `all`. */
static tt_rollouts tti_rollouts_view(const tt_rollouts *all, int begin, int n) {
    tt_rollouts view = *all;
    view.items += begin;
    view.n = n;
    view.n_groups = n / all->num_generations;
    return view;
}

/* The micro-batch that begins at `begin`: as many rollouts as fit into max_tokens, at least one. Its forward
 * and backward pass is one graph, so its tokens are what a step's memory is proportional to. */
static tt_rollouts tti_micro_batch(const tt_rollouts *all, int begin, int max_tokens) {
    int end = begin, tokens = 0;
    while (end < all->n) {
        int length = tt_rollouts_tokens(all, begin, end);
        if (end > begin && length > max_tokens - tokens) { break; }
        tokens += length < max_tokens ? length : max_tokens;
        end++;
    }
    return tti_rollouts_view(all, begin, end - begin);
}

/* Log-probs of all responses under model, without gradients, into old_logprobs or ref_logprobs. */
static tt_status tti_all_logprobs(tt_trainer *t, tt_model *model, int as_reference) {
    tt_scoring scoring = TT_INIT;
    size_t total = 0;
    float *values, *at;
    tt_status status;
    int i;
    for (i = 0; i < t->rollouts.n; i++) { total += (size_t)t->rollouts.items[i].response_length; }
    at = values = (float *)tt_alloc(t->ctx, total, sizeof *values);
    if (!values) { return TT_ERR_MEM; }
    scoring.model = model;
    scoring.temperature = t->desc.grpo.temperature;
    scoring.micro_batch_tokens = t->desc.grpo.micro_batch_tokens;
    TTI_TRY(tt_rollouts_logprobs(&t->rollouts, &scoring, values, NULL));
    for (i = 0; i < t->rollouts.n; i++) {
        tt_rollout *r = &t->rollouts.items[i];
        float **out = as_reference ? &r->ref_logprobs : &r->old_logprobs;
        size_t n = (size_t)r->response_length;
        if (!*out) { *out = (float *)tt_alloc(t->ctx, n, sizeof **out); }
        if (!*out) {
            status = TT_ERR_MEM;
            goto done;
        }
        memcpy(*out, at, n * sizeof **out);
        at += n;
    }
done:
    tt_free(t->ctx, values, total, sizeof *values);
    return status;
}

static int tti_kl_in_reward(const tt_trainer *t) {
    return t->desc.grpo.kl_in_reward && t->desc.grpo.beta != 0;
}

/* Old log-probs where a later update or a reward will ask for them. A single update does without:
 * old_logprobs NULL is the policy of that moment, the ratio is 1 exactly and a forward pass is saved. Those
 * of the reference where a divergence from it is trained on or measured. */
static tt_status tti_step_logprobs(tt_trainer *t) {
    const tt_grpo_config *c = &t->desc.grpo;
    tt_model *reference = t->desc.reference;
    tt_status status = TT_OK;
    int was = 0;
    if (c->num_iterations > 1 || c->num_mini_batches > 1 || tti_kl_in_reward(t)) {
        status = tti_all_logprobs(t, t->desc.model, 0);
    }
    if (status != TT_OK || (c->beta == 0 && !t->desc.measure_kl)) { return status; }
    if (reference == t->desc.model) { was = tt_model_lora_enable(reference, 0); }
    status = tti_all_logprobs(t, reference, 1);
    if (reference == t->desc.model) { tt_model_lora_enable(reference, was); }
    return status;
}

/* ---- [tt:train.advantages] advantages over all ranks ----
 * Some advantages look beyond their group: the batch's std, GPG's share of rewards that are not 0,
 * REINFORCE++'s whitening over all tokens, GDPO's standardisation. So every rank computes those of all
 * responses, from one row of numbers that it is told of each, in the order of one process, and takes its own.
 * Tokens stay where they are. With kl_in_reward a row has the divergence's cost, which the rank with the
 * log-probs has summed. One process does the same: there is one path, and so the bits are the same at any
 * number of ranks. */

/* A response as a row, and back: what tt_grpo_advantages looks at (rewards, length, end, who wrote it, cost)
 * and what tt_think_score does (guided, attempt_reward). Floats become doubles and floats again, exactly. */
static void tti_row_write(const tt_trainer *t, const tt_rollout *r, double *row) {
    int k;
    row[TTI_LENGTH] = r->response_length;
    row[TTI_STOPPED] = r->stopped;
    row[TTI_GUIDED] = r->guided;
    row[TTI_OFF_POLICY] = r->off_policy;
    row[TTI_ATTEMPT_REWARD] = (double)r->attempt_reward;
    row[TTI_KL_COST] = r->kl_cost;
    for (k = 0; k < t->n_rewards; k++) { row[TTI_REWARDS + k] = (double)r->rewards[k]; }
}

/* What statistics and metrics need of another rank's rollout: numbers, never its tokens. */
static void tti_row_read(const tt_trainer *t, const double *row, tt_rollout *r) {
    int k;
    r->response_length = (int)row[TTI_LENGTH];
    r->stopped = (int)row[TTI_STOPPED];
    r->guided = (int)row[TTI_GUIDED];
    r->off_policy = (int)row[TTI_OFF_POLICY];
    r->attempt_reward = (float)row[TTI_ATTEMPT_REWARD];
    r->kl_cost = row[TTI_KL_COST];
    for (k = 0; k < t->n_rewards; k++) { r->rewards[k] = (float)row[TTI_REWARDS + k]; }
}

/* Fills items, [prompts_per_step * num_generations], with the responses of all ranks. Row i of what is
 * gathered is number i % own of rank i / own; in the order of one process its group stands at
 * tti_group_place. */
static tt_status tti_gather_responses(tt_trainer *t, tt_rollout *items) {
    int width = TTI_REWARDS + t->n_rewards, own = t->rollouts.n, size = t->rollouts.num_generations, i;
    int world = t->desc.world_size;
    size_t count = (size_t)own * (size_t)width, total = count * (size_t)(world + 1);
    double *mine = (double *)tt_alloc(t->ctx, total, sizeof *mine), *all;
    tt_status status;
    if (!mine) { return TT_ERR_MEM; }
    all = mine + count;
    for (i = 0; i < own; i++) { tti_row_write(t, &t->rollouts.items[i], mine + i * width); }
    status = tt_reducer_gather(t->reducer, mine, (int)count, all);
    for (i = 0; i < own * world && status == TT_OK; i++) {
        int group = tti_group_place(t, i / own, i % own / size);
        tti_row_read(t, all + (size_t)i * (size_t)width, &items[group * size + i % size]);
    }
    tt_free(t->ctx, mine, total, sizeof *mine);
    return status;
}

/* A step fails only if no response at all has a score and reward functions failed. A batch whose rewards all
 * abstain without a failure is the user's choice: its advantages are 0. All ranks see the same and fail
 * together. */
static tt_status tti_step_scored(tt_trainer *t, const tti_step *s, const tt_rollouts *whole) {
    int i, k, scored = s->metrics.reward_errors == 0;
    for (i = 0; i < whole->n; i++) {
        for (k = 0; k < t->n_rewards; k++) { scored |= !isnan(whole->items[i].rewards[k]); }
    }
    if (scored) { return TT_OK; }
    if (s->errors.n > 0) { return tt_fail(t->ctx, s->errors.status, "%s", s->errors.text); }
    return tt_fail(t->ctx, TT_ERR_NUMBER,
                   "tt_trainer_step: the reward functions failed on other ranks, and nobody "
                   "scored a response");
}

/* Rewards and advantages of all responses; each rank takes those of its own. */
static tt_status tti_step_advantages(tt_trainer *t, tti_step *s) {
    int size = t->rollouts.num_generations, limit = t->desc.grpo.max_completion_length, i;
    size_t n = (size_t)t->rollouts.n * (size_t)t->desc.world_size;
    tt_rollouts whole = t->rollouts;
    unsigned char *kinds = (unsigned char *)tt_alloc(t->ctx, (size_t)limit, 1);
    tt_status status = TT_ERR_MEM;
    whole.items = (tt_rollout *)tt_alloc(t->ctx, n, sizeof *whole.items);
    whole.n = (int)n;
    whole.n_groups = t->desc.prompts_per_step;
    if (!whole.items || !kinds) { goto done; }
    memset(kinds, TT_KIND_STUDENT, (size_t)limit);      /* in the loss: all that advantages ask */
    for (i = 0; i < whole.n; i++) {
        whole.items[i].group = i / size;
        whole.items[i].sample = i % size;
        whole.items[i].kind = kinds;
    }
    if (tti_kl_in_reward(t)) { TTI_TRY(tt_grpo_rewards(&t->rollouts, &t->desc.grpo, t->weights, NULL)); }
    TTI_TRY(tti_gather_responses(t, whole.items));
    TTI_TRY(tti_step_scored(t, s, &whole));
    TTI_TRY(tt_grpo_advantages(&whole, &t->desc.grpo, t->weights, &s->metrics.grpo));
    tt_think_score(&whole, &s->metrics.think);
    for (i = 0; i < t->rollouts.n; i++) {
        int place = tti_group_place(t, t->desc.rank, i / size) * size + i % size;
        t->rollouts.items[i].reward = whole.items[place].reward;
        t->rollouts.items[i].advantage = whole.items[place].advantage;
    }
done:
    tt_free(t->ctx, whole.items, n, sizeof *whole.items);
    tt_free(t->ctx, kinds, (size_t)limit, 1);
    return status;
}

/* ---- [tt:train.update] losses, gradients, updates ----
 * A pass over the rollouts is cut into mini-batches, one update each; a mini-batch into parts, whose
 * gradients are summed as a tree; a part into micro-batches, whose gradients add up one after the other.
 * Every loss has the denominators of its whole mini-batch, so that none of these cuts shows but in the last
 * bits (and in BNPO). */

/* Micro-batches of a mini-batch's share on this rank; none reaches over the end of a part. BNPO is the mean
 * over all n micro-batches b of their own means: L = 1/n sum_b (sum of the losses in b) / (tokens in b). */
static double tti_count_micro_batches(const tt_trainer *t, const tt_rollouts *own, int part) {
    double n = 0;
    int begin = 0;
    for (; begin < own->n; n++) {
        tt_rollouts rest = tti_rollouts_view(own, 0, (begin / part + 1) * part);
        begin += tti_micro_batch(&rest, begin, t->desc.grpo.micro_batch_tokens).n;
    }
    return n;
}

/* A mini-batch's denominators, over all ranks. Whole numbers: their sums are exact. share: BNPO's mean over
 * micro-batches, one over their number; for all other aggregations 1. */
static tt_status tti_step_totals(tt_trainer *t, const tt_rollouts *own, int part, tt_loss_totals *totals,
                                 double *share) {
    tt_loss_totals mine = tt_grpo_totals(own, &t->desc.grpo);
    double n_micro = tti_count_micro_batches(t, own, part);
    double of[6] = {mine.tokens, mine.guided, mine.sequences, mine.filled, n_micro, mine.longest};
    tt_status status = tti_over_ranks(t->reducer, of, 6, 1);
    totals->tokens = of[0];
    totals->guided = of[1];
    totals->sequences = of[2];
    totals->filled = of[3];
    totals->longest = of[5];
    *share = t->desc.grpo.aggregation == TT_BNPO ? 1 / of[4] : 1;
    return status;
}

/* Forward and backward of all micro-batches of a part; row receives what they measure. A micro-batch's loss
 * is the sum of its tokens' losses over a denominator of the whole mini-batch, so that losses, gradients and
 * metrics of micro-batches simply add up. */
static tt_status tti_part_backward(tt_trainer *t, const tt_rollouts *part, const tt_loss_totals *totals,
                                   double share, double *row) {
    const tt_trainer_desc *d = &t->desc;
    tt_step_metrics m;
    tt_status status = TT_OK;
    int begin = 0, k;
    memset(&m, 0, sizeof m);
    while (begin < part->n && status == TT_OK) {
        tt_rollouts micro = tti_micro_batch(part, begin, d->grpo.micro_batch_tokens);
        tt_batch *tokens = tt_rollouts_batch(t->ctx, &micro, NULL, 0);
        tt_tensor *entropy = NULL, *logprobs, *loss;
        tt_loss_batch batch = TT_INIT;
        batch.rollouts = &micro;
        batch.totals = totals;
        logprobs = tt_model_logprobs(d->model, tokens, d->grpo.temperature, &entropy);
        loss = tt_grpo_loss(t->ctx, logprobs, entropy, &batch, &d->grpo, &m.grpo);
        if (share != 1) { loss = tt_scale(t->ctx, loss, (float)share); }
        status = tti_end_graph(t->ctx, tt_backward(t->ctx, loss));
        begin += micro.n;
    }
    for (k = 0; k < TTI_N_METRICS; k++) { row[k] = *tti_metric_at(&m, k); }
    return status;
}

/* The gradients of a mini-batch over all ranks, then one update; own: what of it lies on this rank. With the
 * loss L of a token and its weight w, whose denominator must be known before the first backward pass:
 *     g = sum over parts (a tree) of sum over micro-batches (one by one) of d/dtheta sum over tokens of w L
 *     theta <- AdamW(theta, clipped g, learning rate of this step)
 * Measures are gathered part by part, for their sums too must not depend on the number of ranks. */
static tt_status tti_step_update(tt_trainer *t, const tt_rollouts *own, tt_step_metrics *m) {
    const tt_reducer_desc *d = tt_reducer_desc_get(t->reducer);
    int n_own = d->n_parts / d->world_size, size = own->n / n_own, k;
    size_t n = (size_t)(n_own + d->n_parts) * TTI_N_METRICS;
    double *rows = (double *)tt_alloc(t->ctx, n, sizeof *rows), *all, share;
    tt_loss_totals totals;
    tt_optimizer_stats stats;
    tt_status status;
    if (!rows) { return TT_ERR_MEM; }
    all = rows + n_own * TTI_N_METRICS;
    TTI_TRY(tti_step_totals(t, own, size, &totals, &share));
    for (k = 0; k < n_own; k++) {
        tt_rollouts part = tti_rollouts_view(own, k * size, size);
        TTI_TRY(tti_part_backward(t, &part, &totals, share, rows + k * TTI_N_METRICS));
        TTI_TRY(tt_reducer_add(t->reducer));
    }
    TTI_TRY(tt_reducer_sum(t->reducer));
    TTI_TRY(tt_reducer_gather(t->reducer, rows, n_own * TTI_N_METRICS, all));
    tti_metrics_add(m, all, d->n_parts);
    m->learning_rate = (double)tt_learning_rate(&t->desc.schedule, t->step);
    TTI_TRY(tt_optimizer_step(t->optimizer, (float)m->learning_rate, &stats));
    m->grad_norm = stats.grad_norm;
    m->update_skipped += stats.skipped;
done:
    tt_free(t->ctx, rows, n, sizeof *rows);
    return status;
}

/* num_iterations passes over the rollouts, of num_mini_batches updates each. The last pass is reported: in
 * the first the policy is still the one that sampled, and nothing is clipped. */
static tt_status tti_step_learn(tt_trainer *t, tt_step_metrics *m) {
    const tt_grpo_config *c = &t->desc.grpo;
    tt_grpo_metrics before = m->grpo;      /* what the advantages have measured */
    int size = t->rollouts.n / c->num_mini_batches, pass, k;
    tt_status status = TT_OK;
    for (pass = 0; pass < c->num_iterations; pass++) {
        m->grpo = before;
        for (k = 0; k < c->num_mini_batches; k++) {
            tt_rollouts own = tti_rollouts_view(&t->rollouts, k * size, size);
            TTI_TRY(tti_step_update(t, &own, m));
        }
        tti_metrics_divide(m, c->num_mini_batches);
    }
done:
    return status;
}

/* ---- [tt:train.step] one step ----
 * The calls of tti_step_run are the table of [tt:train.client]. A step that fails leaves weights, moments and
 * counters as they were, or, where an update of several is done, after that update; it may be tried again. */

/* Adds up over ranks what each has counted: the tally, and the rows TTI_COUNTED of the metrics. These two
 * ints of the feedback's metrics go as doubles. */
static tt_status tti_step_count(tt_trainer *t, tti_step *s) {
    tt_step_metrics *m = &s->metrics;
    tt_tally *y = &s->tally;
    double guided = m->think.n_guided, eligible = m->think.n_eligible, values[TTI_N_METRICS + 32];
    double *counts[TTI_N_METRICS + 32] = {
        &guided, &eligible, &y->n, &y->right, &y->attempts, &y->first, &y->reflects, &y->corrected,
        &y->spoiled, &y->length, &y->stopped
    };
    tt_status status;
    int n = 11, k;
    m->reward_errors = s->errors.n;
    for (k = 0; k < t->rollouts.n; k++) {
        const tt_rollout *r = &t->rollouts.items[k];
        m->update_tokens += (r->prompt_length + r->response_length) * t->desc.grpo.num_iterations;
    }
    for (k = 0; k < TT_N_BEHAVIOURS; k++) { counts[n++] = &y->behaviour[k]; }
    for (k = 0; k < TTI_N_METRICS; k++) {
        if (tti_metrics[k].how == TTI_COUNTED) { counts[n++] = tti_metric_at(m, k); }
    }
    for (k = 0; k < n; k++) { values[k] = *counts[k]; }
    status = tti_over_ranks(t->reducer, values, n, 0);
    for (k = 0; k < n; k++) { *counts[k] = values[k]; }
    m->think.n_guided = (int)guided;
    m->think.n_eligible = (int)eligible;
    return status;
}

/* Gradients are zeroed here, not after the update: a step that fails leaves what it has added. */
static tt_status tti_step_run(tt_trainer *t, tti_step *s) {
    int n = t->desc.prompts_per_step / t->desc.world_size, i;
    tt_step_metrics *m = &s->metrics;
    double begin = tt_clock();
    tt_status status;
    tt_model_zero_grad(t->desc.model);
    t->reducer->n_added = 0;                                /* of a step that failed */
    TTI_TRY(tt_prompts_create(t->ctx, t->desc.task, t->desc.tokenizer, n, &s->prompts));
    s->groups = (int *)tt_alloc(t->ctx, (size_t)n, sizeof *s->groups);
    if (!s->groups) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { s->groups[i] = i; }
    TTI_TRY(tti_step_collect(t, s));                        /* ask, sample, off-policy, reward, teach */
    TTI_TRY(tti_step_logprobs(t));                          /* of policy and reference, before the update */
    TTI_TRY(tti_step_count(t, s));
    TTI_TRY(tti_step_advantages(t, s));
    if (t->desc.advise) {
        tt_eval(t->ctx);
        status = t->desc.advise(t->desc.advise_user, &s->prompts, &t->rollouts);
        TTI_TRY(tti_called(t->ctx, status, "advise: step", (uint64_t)t->step));
    }
    TTI_TRY(tti_step_learn(t, m));                          /* losses, gradients, updates */
    m->step_s = tt_clock() - begin;
    m->update_s = m->step_s - m->rollout_s - m->teacher_s;
done:
    return status;
}

/* What only the whole step knows: rates of the tally, speeds, tokens so far. clipped_ratio is TRL's name for
 * the share of responses that max_completion_length has ended. */
static void tti_step_report(tt_trainer *t, tti_step *s) {
    tt_step_metrics *m = &s->metrics;
    tt_rates own = tt_tally_rates(&s->tally);
    int k;
    m->step = t->step;
    m->mean_length = own.mean_length;
    m->clipped_ratio = 1 - own.stopped_rate;
    m->attempt_rate = own.attempt_rate;
    m->reflection_rate = own.reflection_rate;
    m->correction_rate = own.correction_rate;
    m->spoil_rate = own.spoil_rate;
    memcpy(m->behaviour, own.behaviour, sizeof m->behaviour);
    t->num_tokens += m->rollout_tokens + m->think.teacher_tokens;
    m->num_tokens = t->num_tokens;
    m->rollout_tokens_per_s = tti_ratio(m->rollout_tokens, m->rollout_s);
    m->teacher_tokens_per_s = tti_ratio(m->think.teacher_tokens, m->teacher_s);
    m->update_tokens_per_s = tti_ratio(m->update_tokens, m->update_s);
    m->n_rewards = t->n_rewards;
    for (k = 0; k < t->n_rewards; k++) {
        m->reward_names[k] = t->rewards[k].name ? t->rewards[k].name : "task";
    }
}

/* Counts the steps in a row that were in trouble; the one that ends the patience stops the run, after its
 * update and with its metrics. One bad step is no trouble: a skipped update costs nothing, and rewards
 * recover. What does not recover is a policy whose entropy or reward has collapsed, and a run of gradients
 * that are not finite. */
static tt_status tti_step_watch(tt_trainer *t, const tt_step_metrics *m) {
    static const char *const what[TTI_N_TROUBLES] = {
        "a gradient or loss that is not finite", "a reward that has collapsed",
        "an entropy that has collapsed"
    };
    int patience[TTI_N_TROUBLES], bad[TTI_N_TROUBLES], k;
    bad[TTI_TROUBLE_NUMBER] = m->update_skipped > 0 || !isfinite(m->grpo.loss);
    bad[TTI_TROUBLE_REWARD] = m->grpo.reward <= (double)t->desc.abort_reward;
    bad[TTI_TROUBLE_ENTROPY] = m->grpo.entropy < (double)t->desc.abort_entropy;
    for (k = 0; k < TTI_N_TROUBLES; k++) {
        t->troubles[k] = bad[k] ? t->troubles[k] + 1 : 0;
        patience[k] = t->desc.abort_patience;
    }
    if (patience[TTI_TROUBLE_NUMBER] == 0) { patience[TTI_TROUBLE_NUMBER] = TT_MAX_SKIPPED; }
    for (k = 0; k < TTI_N_TROUBLES; k++) {
        int steps = t->troubles[k];
        if (patience[k] <= 0 || steps < patience[k]) { continue; }
        t->troubles[k] = 0;
        return tt_fail(t->ctx, TT_ERR_STOP,
                       "tt_trainer_step: stopped after step %d: %s, %d steps in a row (loss %g, "
                       "reward %g, entropy %g, grad_norm %g)",
                       m->step, what[k], steps, m->grpo.loss, m->grpo.reward, m->grpo.entropy, m->grad_norm);
    }
    return TT_OK;
}

TT_API tt_status tt_trainer_step(tt_trainer *t, tt_step_metrics *metrics) {
    tti_step s;
    tt_status status;
    if (t->stepping) {
        return tt_fail(t->ctx, TT_ERR_ARG,
                       "tt_trainer_step: called by a callback of this trainer's own step");
    }
    memset(&s, 0, sizeof s);
    t->stepping = 1;
    status = tti_step_run(t, &s);
    t->stepping = 0;
    tt_free(t->ctx, s.groups, (size_t)(t->desc.prompts_per_step / t->desc.world_size), sizeof *s.groups);
    tt_prompts_free(&s.prompts);
    tt_rollouts_free(&s.round);
    if (status != TT_OK) { return tti_end_graph(t->ctx, status); }
    tti_step_report(t, &s);
    t->step++;
    if (metrics) { *metrics = s.metrics; }
    return tti_step_watch(t, &s.metrics);
}

/* ---- [tt:train.state] saving and resuming ----
 * Beside weights and moments only counters are kept. The settings that steer the random streams are written
 * too, so that a run is not continued under others; the seed as text: 64 bits do not fit a JSON number. */

TT_API tt_status tt_trainer_save(tt_trainer *t, const char *path) {
    tt_text json = TT_INIT;
    tt_status status;
    json.ctx = t->ctx;
    TTI_TRY(tt_text_format(&json,
                           "{\"step\":%d,\"num_tokens\":%r,\"seed\":\"%016llx\",\"prompts_per_step\":%d,"
                           "\"num_generations\":%d,\"troubles\":[%d,%d,%d]}",
                           t->step, t->num_tokens, (unsigned long long)t->desc.seed, t->desc.prompts_per_step,
                           t->desc.grpo.num_generations, t->troubles[0], t->troubles[1], t->troubles[2]));
    TTI_TRY(tt_optimizer_save(t->optimizer, path, json.data, t->desc.also, t->desc.n_also));
done:
    tt_text_free(&json);
    return status;
}

/* Takes the counters of a state over, if its settings are the trainer's: with another seed or another number
 * of prompts or samples, the same step numbers would draw other questions. */
static tt_status tti_trainer_restore(tt_trainer *t, const char *path, const tt_json *state) {
    const tt_json *troubles = tt_json_get(state, "troubles"), *trouble = troubles ? troubles->child : NULL;
    int prompts = tt_json_int(state, "prompts_per_step", 0),
        samples = tt_json_int(state, "num_generations", 0), k;
    char seed[32];
    snprintf(seed, sizeof seed, "%016llx", (unsigned long long)t->desc.seed);
    if (strcmp(seed, tt_json_text(state, "seed", "")) != 0) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_trainer_load: %s has seed %s, the trainer %s", path,
                       tt_json_text(state, "seed", "none"), seed);
    }
    if (prompts != t->desc.prompts_per_step || samples != t->desc.grpo.num_generations) {
        return tt_fail(t->ctx, TT_ERR_FILE,
                       "tt_trainer_load: %s has prompts_per_step %d and num_generations %d, the "
                       "trainer %d and %d",
                       path, prompts, samples, t->desc.prompts_per_step, t->desc.grpo.num_generations);
    }
    t->step = tt_json_int(state, "step", -1);
    t->num_tokens = tt_json_number(state, "num_tokens", -1);
    for (k = 0; k < TTI_N_TROUBLES && trouble; k++, trouble = trouble->next) {
        int whole = trouble->type == TT_JSON_NUMBER && trouble->number >= 0 && trouble->number <= INT_MAX &&
                    floor(trouble->number) == trouble->number;
        if (!whole) { t->step = -1; }
        t->troubles[k] = whole ? (int)trouble->number : 0;
    }
    if (t->step >= 0 && t->num_tokens >= 0) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_FILE,
                   "tt_trainer_load: %s: expected step and troubles, whole numbers, and num_tokens "
                   ">= 0",
                   path);
}

/* The trainer's part of the state is read and looked at before the optimizer's changes anything; what can
 * fail after it changes nothing either, so a state is taken over whole or not at all. */
static tt_status tti_trainer_read(tt_trainer *t, const char *path) {
    tt_text text = TT_INIT;
    tt_json *state = NULL;
    char why[300];
    tt_status status;
    text.ctx = t->ctx;
    TTI_TRY(tt_optimizer_peek(t->optimizer, path, &text));
    state = tt_json_parse(t->ctx, text.data ? text.data : "", text.size);
    if (!state) {
        snprintf(why, sizeof why, "%.290s", tt_error(t->ctx));
        status = tt_error_status(t->ctx);
        if (status != TT_ERR_MEM) { status = tt_fail(t->ctx, TT_ERR_FILE, "%s: state: %s", path, why); }
        goto done;
    }
    TTI_TRY(tti_trainer_restore(t, path, state));
    TTI_TRY(tt_optimizer_load(t->optimizer, path, NULL, t->desc.also, t->desc.n_also));
done:
    tt_json_free(t->ctx, state);
    tt_text_free(&text);
    return status;
}

/* A success takes the sentence of this function's own refusal away, but no other. */
TT_API tt_status tt_trainer_load(tt_trainer *t, const char *path) {
    tt_trainer was = *t;
    tt_status status = tti_trainer_read(t, path);
    uint64_t sentence = tt_hash(tt_error(t->ctx), strlen(tt_error(t->ctx)), 0);
    if (status != TT_OK) {
        *t = was;
        t->refused = sentence;
    } else if (t->refused == sentence) {
        tt_error_clear(t->ctx);
    }
    return status;
}

/* ---- here the text of the trainer ends, which can be copied ---- */

#ifdef __cplusplus
}
#endif
#endif /* TTI_IMPLEMENTED */
#endif /* THINKTUNING_IMPLEMENTATION */
#endif /* TTI_SIMD_PASS */

/* ==== A. kernel bodies =====================================================================
 * Chapter 2 includes the header once per instruction set with TTI_SIMD_PASS set; only this appendix is then
 * compiled. First the dialect: a vector TTI_V of TTI_W floats on which + - * / work lane by lane, and a few
 * named operations. Then every kernel, once, in that dialect. TTI_K(name) is the name in the set, as in
 * tti_avx2_name.
 *
 * Of n values the last vector may hold fewer than TTI_W: TTI_K(load)(p, left) and TTI_K(store)(p, v, left)
 * take what is left, and touch no memory beyond. */
#ifdef TTI_SIMD_PASS
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF      /* a * b + c is one rounding only where TTI_FMA says so */
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#pragma GCC diagnostic push
/* g++ means the undefined lanes in its own intrinsics */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

/* ---- [tt:bodies.dialect] the dialect ----
 *     SET                 all lanes one value
 *     FMA(a, b, c)        a b + c, rounded once (in the portable set and simd128 twice)
 *     MAX(a, b), MIN      b if one is a NaN
 *     LT, IF(c, a, b)     1 or 0; a where c is not 0
 *     LOAD_PART(p, n, f)  the first n < TTI_W lanes, f in the others
 *     STORE_PART          the first n < TTI_W lanes
 *     I_..                32-bit integers, as which TO_I and FROM_I take the bits of a vector
 *     POW2(t)             2^i for t = 1.5 * 2^23 + i, the sum that rounds to an integer: i in its lowest bits
 *     WIDE(p)             TTI_W values of bf16
 *     LOW, HIGH, PAIR     of a vector of pairs of bf16 the first and the second of each, and back
 * A tile of C has TTI_ROWS rows of TTI_VECTORS vectors: as many as the registers hold beside a row of B. */
#if TTI_SIMD_PASS == TTI_PASS_AVX512
#define TTI_K(name) tti_avx512_##name
#define TTI_NAME "avx512"
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif
#define TTI_V __m512
#define TTI_W 16
#define TTI_ROWS 12
#define TTI_VECTORS 2
#define TTI_SET(x) _mm512_set1_ps(x)
#define TTI_LOAD(p) _mm512_loadu_ps(p)
#define TTI_STORE(p, v) _mm512_storeu_ps(p, v)
#define TTI_FIRST(n) ((__mmask16)((1u << (n)) - 1u))
#define TTI_LOAD_PART(p, n, fill) _mm512_mask_loadu_ps(_mm512_set1_ps(fill), TTI_FIRST(n), p)
#define TTI_STORE_PART(p, v, n) _mm512_mask_storeu_ps(p, TTI_FIRST(n), v)
#define TTI_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define TTI_MAX(a, b) _mm512_max_ps(a, b)
#define TTI_MIN(a, b) _mm512_min_ps(a, b)
#define TTI_SQRT(a) _mm512_sqrt_ps(a)
#define TTI_LT(a, b) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), _mm512_set1_ps(1.0f))
#define TTI_IF(c, a, b) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_NEQ_UQ), b, a)
#define TTI_I __m512i
#define TTI_TO_I(v) _mm512_castps_si512(v)
#define TTI_FROM_I(i) _mm512_castsi512_ps(i)
#define TTI_I_SET(n) _mm512_set1_epi32(n)
#define TTI_I_ADD(a, b) _mm512_add_epi32(a, b)
#define TTI_I_AND(a, b) _mm512_and_si512(a, b)
#define TTI_I_LEFT(a, n) _mm512_slli_epi32(a, n)
#define TTI_I_RIGHT(a, n) _mm512_srli_epi32(a, n)
#define TTI_I_LOAD16(p) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)))

#elif TTI_SIMD_PASS == TTI_PASS_AVX2
#define TTI_K(name) tti_avx2_##name
#define TTI_NAME "avx2"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define TTI_V __m256
#define TTI_W 8
#define TTI_ROWS 4
#define TTI_VECTORS 3
#define TTI_SET(x) _mm256_set1_ps(x)
#define TTI_LOAD(p) _mm256_loadu_ps(p)
#define TTI_STORE(p, v) _mm256_storeu_ps(p, v)
#define TTI_FIRST(n) \
    _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define TTI_LOAD_PART(p, n, fill) \
    _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, TTI_FIRST(n)), \
                     _mm256_castsi256_ps(TTI_FIRST(n)))
/* Masked stores are slow on some CPUs; 4 floats are stored often. */
#define TTI_STORE_PART(p, v, n) \
    ((n) == 4 ? _mm_storeu_ps(p, _mm256_castps256_ps128(v)) : _mm256_maskstore_ps(p, TTI_FIRST(n), v))
#define TTI_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define TTI_MAX(a, b) _mm256_max_ps(a, b)
#define TTI_MIN(a, b) _mm256_min_ps(a, b)
#define TTI_SQRT(a) _mm256_sqrt_ps(a)
#define TTI_LT(a, b) _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), _mm256_set1_ps(1.0f))
#define TTI_IF(c, a, b) _mm256_blendv_ps(b, a, _mm256_cmp_ps(c, _mm256_setzero_ps(), _CMP_NEQ_UQ))
#define TTI_I __m256i
#define TTI_TO_I(v) _mm256_castps_si256(v)
#define TTI_FROM_I(i) _mm256_castsi256_ps(i)
#define TTI_I_SET(n) _mm256_set1_epi32(n)
#define TTI_I_ADD(a, b) _mm256_add_epi32(a, b)
#define TTI_I_AND(a, b) _mm256_and_si256(a, b)
#define TTI_I_LEFT(a, n) _mm256_slli_epi32(a, n)
#define TTI_I_RIGHT(a, n) _mm256_srli_epi32(a, n)
#define TTI_I_LOAD16(p) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p)))

#elif TTI_SIMD_PASS == TTI_PASS_NEON
#define TTI_K(name) tti_neon_##name
#define TTI_NAME "neon"
#define TTI_V float32x4_t
#define TTI_W 4
#define TTI_ROWS 8
#define TTI_VECTORS 3
#define TTI_SET(x) vdupq_n_f32(x)
#define TTI_LOAD(p) vld1q_f32(p)
#define TTI_STORE(p, v) vst1q_f32(p, v)
#define TTI_FMA(a, b, c) vfmaq_f32(c, a, b)
#define TTI_MAX(a, b) vbslq_f32(vcgtq_f32(a, b), a, b)
#define TTI_MIN(a, b) vbslq_f32(vcltq_f32(a, b), a, b)
#define TTI_SQRT(a) vsqrtq_f32(a)
#define TTI_LT(a, b) vbslq_f32(vcltq_f32(a, b), vdupq_n_f32(1.0f), vdupq_n_f32(0.0f))
#define TTI_IF(c, a, b) vbslq_f32(vceqq_f32(c, vdupq_n_f32(0.0f)), b, a)
#define TTI_I uint32x4_t
#define TTI_TO_I(v) vreinterpretq_u32_f32(v)
#define TTI_FROM_I(i) vreinterpretq_f32_u32(i)
#define TTI_I_SET(n) vdupq_n_u32((uint32_t)(n))
#define TTI_I_ADD(a, b) vaddq_u32(a, b)
#define TTI_I_AND(a, b) vandq_u32(a, b)
#define TTI_I_LEFT(a, n) vshlq_n_u32(a, n)
#define TTI_I_RIGHT(a, n) vshrq_n_u32(a, n)
#define TTI_I_LOAD16(p) vmovl_u16(vld1_u16(p))

#elif TTI_SIMD_PASS == TTI_PASS_SIMD128      /* as GCC and Clang have vectors on every machine */
#define TTI_K(name) tti_simd128_##name
#define TTI_NAME "simd128"
#define TTI_V tti_simd128
#define TTI_W 4
#define TTI_ROWS 4
#define TTI_VECTORS 2
typedef float tti_simd128 __attribute__((vector_size(16)));
typedef uint32_t tti_simd128_bits __attribute__((vector_size(16)));

TTI_INLINE TTI_V tti_simd128_set(float x) {
    TTI_V v = {x, x, x, x};
    return v;
}

TTI_INLINE TTI_V tti_simd128_read(const float *p) {
    TTI_V v;
    memcpy(&v, p, sizeof v);
    return v;
}

TTI_INLINE void tti_simd128_write(float *p, TTI_V v) { memcpy(p, &v, sizeof v); }

TTI_INLINE tti_simd128_bits tti_simd128_read16(const uint16_t *p) {
    tti_simd128_bits v = {p[0], p[1], p[2], p[3]};
    return v;
}

TTI_INLINE TTI_V tti_simd128_pick(tti_simd128_bits c, TTI_V a, TTI_V b) {
    return (TTI_V)((c & (tti_simd128_bits)a) | (~c & (tti_simd128_bits)b));
}

#define TTI_SET(x) tti_simd128_set(x)
#define TTI_LOAD(p) tti_simd128_read(p)
#define TTI_STORE(p, v) tti_simd128_write(p, v)
#define TTI_FMA(a, b, c) ((a) * (b) + (c))
#define TTI_MAX(a, b) tti_simd128_pick((tti_simd128_bits)((a) > (b)), a, b)
#define TTI_MIN(a, b) tti_simd128_pick((tti_simd128_bits)((a) < (b)), a, b)
#define TTI_SQRT(a) TTI_K(map)(sqrtf, a)
#define TTI_LT(a, b) tti_simd128_pick((tti_simd128_bits)((a) < (b)), TTI_SET(1.0f), TTI_SET(0.0f))
#define TTI_IF(c, a, b) tti_simd128_pick((tti_simd128_bits)((c) != TTI_SET(0.0f)), a, b)
#define TTI_I tti_simd128_bits
#define TTI_TO_I(v) ((TTI_I)(v))
#define TTI_FROM_I(i) ((TTI_V)(i))
#define TTI_I_SET(n) (TTI_TO_I(TTI_SET(0.0f)) + (uint32_t)(n))
#define TTI_I_ADD(a, b) ((a) + (b))
#define TTI_I_AND(a, b) ((a) & (b))
#define TTI_I_LEFT(a, n) ((a) << (n))
#define TTI_I_RIGHT(a, n) ((a) >> (n))
#define TTI_I_LOAD16(p) tti_simd128_read16(p)

#else
#define TTI_K(name) tti_portable_##name
#define TTI_NAME "portable"
#define TTI_V float
#define TTI_W 1
#define TTI_ROWS 4
#define TTI_VECTORS 3
#define TTI_SET(x) (x)
#define TTI_LOAD(p) (*(p))
#define TTI_STORE(p, v) (*(p) = (v))
#define TTI_FMA(a, b, c) ((a) * (b) + (c))
#define TTI_MAX(a, b) ((a) > (b) ? (a) : (b))
#define TTI_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TTI_SQRT(a) sqrtf(a)
#define TTI_LT(a, b) ((a) < (b) ? 1.0f : 0.0f)
#define TTI_IF(c, a, b) ((c) != 0.0f ? (a) : (b))
#define TTI_I uint32_t
#define TTI_TO_I(v) tti_bits(v)
#define TTI_FROM_I(i) tti_float(i)
#define TTI_I_SET(n) ((uint32_t)(n))
#define TTI_I_ADD(a, b) ((a) + (b))
#define TTI_I_AND(a, b) ((a) & (b))
#define TTI_I_LEFT(a, n) ((a) << (n))
#define TTI_I_RIGHT(a, n) ((a) >> (n))
#define TTI_I_LOAD16(p) ((uint32_t)*(p))
#endif

#define TTI_POW2(t) TTI_FROM_I(TTI_I_LEFT(TTI_I_ADD(TTI_TO_I(t), TTI_I_SET(127)), 23))
#define TTI_WIDE(p) TTI_FROM_I(TTI_I_LEFT(TTI_I_LOAD16(p), 16))
#define TTI_LOW(v) TTI_FROM_I(TTI_I_LEFT(TTI_TO_I(v), 16))
#define TTI_HIGH(v) TTI_FROM_I(TTI_I_AND(TTI_TO_I(v), TTI_I_SET(-65536)))
#define TTI_PAIR(low, high) TTI_FROM_I(TTI_I_ADD(TTI_I_RIGHT(TTI_TO_I(low), 16), TTI_TO_I(high)))

/* Where a tile of C ends; n rounded up to whole vectors; a walk over vectors. */
#define TTI_COLUMNS ((size_t)TTI_VECTORS * TTI_W)
#define TTI_UP(n) (((n) + TTI_W - 1) / TTI_W * TTI_W)
#define TTI_EACH(i, begin, end) for (i = begin; i < end; i += TTI_W)

TTI_INLINE TTI_V TTI_K(load_part)(const float *p, size_t n, float fill) {
#ifdef TTI_LOAD_PART
    return TTI_LOAD_PART(p, n, fill);
#else
    float t[TTI_W];
    size_t i;
    for (i = 0; i < TTI_W; i++) { t[i] = i < n ? p[i] : fill; }
    return TTI_LOAD(t);
#endif
}

TTI_INLINE void TTI_K(store_part)(float *p, TTI_V v, size_t n) {
#ifdef TTI_STORE_PART
    TTI_STORE_PART(p, v, n);
#else
    float t[TTI_W];
    size_t i = 0;
    TTI_STORE(t, v);
#if TTI_W >= 4
    for (; i + 4 <= n && i + 4 <= TTI_W; i += 4) { memcpy(p + i, t + i, 4 * sizeof *t); }
#endif
    for (; i < n && i < TTI_W; i++) { p[i] = t[i]; }
#endif
}

TTI_INLINE TTI_V TTI_K(load_fill)(const float *p, size_t left, float fill) {
    return left >= TTI_W ? TTI_LOAD(p) : TTI_K(load_part)(p, left, fill);
}

TTI_INLINE TTI_V TTI_K(load)(const float *p, size_t left) { return TTI_K(load_fill)(p, left, 0.0f); }

TTI_INLINE void TTI_K(store)(float *p, TTI_V v, size_t left) {
    if (left >= TTI_W) { TTI_STORE(p, v); }
    else { TTI_K(store_part)(p, v, left); }
}

/* Of bf16, as floats. */
TTI_INLINE TTI_V TTI_K(load_half)(const uint16_t *p, size_t left) {
    uint16_t t[TTI_W];
    size_t i;
    if (left >= TTI_W) { return TTI_WIDE(p); }
    for (i = 0; i < TTI_W; i++) { t[i] = (uint16_t)(i < left ? p[i] : 0); }
    return TTI_WIDE(t);
}

/* A float rounded to bf16. (NaNs of a payload in the lower half alone are not kept by the vector sets.) */
TTI_INLINE TTI_V TTI_K(to_bf16)(TTI_V v) {
#if TTI_W > 1
    TTI_I bits = TTI_TO_I(v), even = TTI_I_AND(TTI_I_RIGHT(bits, 16), TTI_I_SET(1));
    bits = TTI_I_ADD(bits, TTI_I_ADD(TTI_I_SET(0x7FFF), even));
    return TTI_FROM_I(TTI_I_AND(bits, TTI_I_SET(-65536)));
#else
    return tti_from_bf16(tti_to_bf16(v));
#endif
}

/* Sums and maxima of the lanes, in halves: lane i meets lane i + half. */
TTI_INLINE float TTI_K(sum)(TTI_V v) {
    float t[TTI_W];
    size_t half, i;
    TTI_STORE(t, v);
    for (half = TTI_W / 2; half > 0; half /= 2) {
        for (i = 0; i < half; i++) { t[i] += t[i + half]; }
    }
    return t[0];
}

TTI_INLINE float TTI_K(max)(TTI_V v) {
    float t[TTI_W];
    size_t half, i;
    TTI_STORE(t, v);
    for (half = TTI_W / 2; half > 0; half /= 2) {
        for (i = 0; i < half; i++) { t[i] = t[i] > t[i + half] ? t[i] : t[i + half]; }
    }
    return t[0];
}

TTI_INLINE TTI_V TTI_K(map)(float (*f)(float), TTI_V x) {
    float t[TTI_W];
    size_t i;
    TTI_STORE(t, x);
    for (i = 0; i < TTI_W; i++) { t[i] = f(t[i]); }
    return TTI_LOAD(t);
}

/* e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2; polynomial of Cephes (Moshier), error below 2 ulp.
 * 2^n goes in two halves so that both ends of the range, infinity and denormals, come out right. */
TTI_INLINE TTI_V TTI_K(exp)(TTI_V x) {
    const TTI_V magic = TTI_SET(12582912.0f);
    TTI_V n, half, r, p, t;
    x = TTI_MIN(TTI_SET(89.0f), x);
    x = TTI_MAX(TTI_SET(-104.0f), x);
    n = TTI_FMA(x, TTI_SET(1.44269504f), magic) - magic;
    r = TTI_FMA(n, TTI_SET(-0.693359375f), x);
    r = TTI_FMA(n, TTI_SET(2.12194440e-4f), r);
    p = TTI_FMA(r, TTI_SET(1.9875691500e-4f), TTI_SET(1.3981999507e-3f));
    p = TTI_FMA(p, r, TTI_SET(8.3334519073e-3f));
    p = TTI_FMA(p, r, TTI_SET(4.1665795894e-2f));
    p = TTI_FMA(p, r, TTI_SET(1.6666665459e-1f));
    p = TTI_FMA(p, r, TTI_SET(5.0000001201e-1f));
    p = TTI_FMA(p * r, r, r) + TTI_SET(1.0f);
    t = TTI_FMA(n, TTI_SET(0.5f), magic);
    half = t - magic;
    return p * TTI_POW2(t) * TTI_POW2((n - half) + magic);
}

TTI_INLINE TTI_V TTI_K(sigmoid)(TTI_V x) {
    return TTI_SET(1.0f) / (TTI_SET(1.0f) + TTI_K(exp)(TTI_SET(0.0f) - x));
}

/* gelu(x) = x (1 + tanh u) / 2 = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3).
 * Source: arXiv 1606.08415, sec. 2. */
TTI_INLINE TTI_V TTI_K(gelu_sigmoid)(TTI_V x) {
    return TTI_K(sigmoid)(TTI_SET(1.59576912f) * x * TTI_FMA(TTI_SET(0.044715f) * x, x, TTI_SET(1.0f)));
}

/* ---- [tt:bodies.unary] op(x) and its derivative ---- */
TTI_INLINE TTI_V TTI_K(value)(int op, TTI_V x, TTI_V p0, TTI_V p1) {
    switch (op) {
    case TT_NEG: return x * TTI_SET(-1.0f);
    case TT_EXP: return TTI_K(exp)(x);
    case TT_LOG: return TTI_K(map)(logf, x);
    case TT_TANH: return TTI_K(map)(tanhf, x);
    case TT_CLAMP: return TTI_MIN(p1, TTI_MAX(p0, x));
    case TT_SCALE: return x * p0;
    case TT_GELU_TANH: return x * TTI_K(gelu_sigmoid)(x);
    default: return x * TTI_K(map)(tti_normal_cdf, x);
    }
}

/* dx of y = op(x). Gelu by tanh, with s = sigmoid(2u):  s + x s (1 - s) 2u';  exactly:  Phi(x) + x phi(x). */
TTI_INLINE TTI_V TTI_K(value_back)(const tti_unary_args *a, TTI_V dy, TTI_V x, TTI_V y) {
    const TTI_V p0 = TTI_SET(a->p0), p1 = TTI_SET(a->p1), one = TTI_SET(1.0f), zero = TTI_SET(0.0f);
    TTI_V s, slope;
    switch (a->op) {
    case TT_NEG: return dy * TTI_SET(-1.0f);
    case TT_EXP: return dy * y;
    case TT_LOG: return dy / x;
    case TT_TANH: return dy * (one - y * y);
    case TT_CLAMP: return TTI_IF(TTI_LT(x, p0), zero, TTI_IF(TTI_LT(p1, x), zero, dy));
    case TT_SCALE: return dy * p0;
    case TT_GELU_TANH:
        s = TTI_K(gelu_sigmoid)(x);
        slope = x * s * (one - s) * TTI_SET(1.59576912f) * TTI_FMA(TTI_SET(0.134145f) * x, x, one);
        return dy * (s + slope);
    default:
        s = TTI_SET(0.398942280f) * TTI_K(exp)(TTI_SET(-0.5f) * x * x);
        return dy * (TTI_K(map)(tti_normal_cdf, x) + x * s);
    }
}

#define TTI_NEXT(p) TTI_K(load)(p + i, end - i)      /* of the values i .. end-1 */
static void TTI_K(unary)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_unary_args *a = (const tti_unary_args *)args;
    const TTI_V p0 = TTI_SET(a->p0), p1 = TTI_SET(a->p1);
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) { TTI_K(store)(a->y + i, TTI_K(value)(a->op, TTI_NEXT(a->x), p0, p1), end - i); }
}

static void TTI_K(unary_back)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_unary_args *a = (const tti_unary_args *)args;
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_V dx = TTI_K(value_back)(a, TTI_NEXT(a->dy), TTI_NEXT(a->x), TTI_NEXT(a->y));
        TTI_K(store)(a->dx + i, TTI_NEXT(a->dx) + dx, end - i);
    }
}

/* ---- [tt:bodies.binary] op(a, b) and its derivatives ----
 * Of two equal values the minimum and maximum are a. swiglu(a, b) = a sigmoid(a) b. */
TTI_INLINE TTI_V TTI_K(combined)(int op, TTI_V a, TTI_V b) {
    switch (op) {
    case TT_ADD: return a + b;
    case TT_SUB: return a - b;
    case TT_MUL: return a * b;
    case TT_DIV: return a / b;
    case TT_MINIMUM: return TTI_IF(TTI_LT(b, a), b, a);
    case TT_MAXIMUM: return TTI_IF(TTI_LT(a, b), b, a);
    case TT_LESS: return TTI_LT(a, b);
    default: return a * TTI_K(sigmoid)(a) * b;
    }
}

static void TTI_K(binary)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_binary_args *g = (const tti_binary_args *)args;
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_K(store)(g->y + i, TTI_K(combined)(g->op, TTI_NEXT(g->a), TTI_NEXT(g->b)), end - i);
    }
}

/* da and db are added to the gradients: of a / b with respect to b, -(a / b) / b. Where a and b are equal,
 * minimum and maximum give their gradient to a. */
static void TTI_K(binary_back)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_binary_args *g = (const tti_binary_args *)args;
    const TTI_V zero = TTI_SET(0.0f), one = TTI_SET(1.0f);
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_V a = TTI_NEXT(g->a), b = TTI_NEXT(g->b), dy = TTI_NEXT(g->dy), da = dy, db = dy, s;
        switch (g->op) {
        case TT_ADD:
            break;
        case TT_SUB:
            db = zero - dy;
            break;
        case TT_MUL:
            da = dy * b;
            db = dy * a;
            break;
        case TT_DIV:
            da = dy / b;
            db = zero - dy * (a / b) / b;
            break;
        case TT_MINIMUM:
        case TT_MAXIMUM:
            s = g->op == TT_MINIMUM ? TTI_LT(b, a) : TTI_LT(a, b);      /* where y is b */
            da = TTI_IF(s, zero, dy);
            db = TTI_IF(s, dy, zero);
            break;
        case TT_LESS:
            da = db = zero;
            break;
        default:
            s = TTI_K(sigmoid)(a);
            da = dy * b * s * TTI_FMA(a, one - s, one);
            db = dy * a * s;
            break;
        }
        if (g->da) { TTI_K(store)(g->da + i, TTI_NEXT(g->da) + da, end - i); }
        if (g->db) { TTI_K(store)(g->db + i, TTI_NEXT(g->db) + db, end - i); }
    }
}

/* ---- [tt:bodies.sums] sums into values, rows and squares ---- */
static void TTI_K(axpy)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_axpy_args *a = (const tti_axpy_args *)args;
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_K(store)(a->y + i, TTI_FMA(TTI_SET(a->alpha), TTI_NEXT(a->x), TTI_NEXT(a->y)), end - i);
    }
}

/* Items: columns. */
static void TTI_K(add_rows)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_add_rows_args *a = (const tti_add_rows_args *)args;
    size_t row, i;
    (void)scratch;
    for (row = 0; row < a->n; row++) {
        float *y = a->y + (a->rows ? (size_t)a->rows[row] : 0) * a->dim;
        const float *x = a->x + row * a->dim;
        TTI_EACH(i, begin, end) { TTI_K(store)(y + i, TTI_NEXT(y) + TTI_NEXT(x), end - i); }
    }
}

/* Value i goes to sum i % 16 whatever the vectors are, so that all sets agree. */
static void TTI_K(squares)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_squares_args *a = (const tti_squares_args *)args;
    size_t item, i, j;
    (void)scratch;
    for (item = begin; item < end; item++) {
        const float *x = a->x + item * TTI_SQUARES;
        size_t n = tti_least(a->n - item * TTI_SQUARES, TTI_SQUARES);
        double sums[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
        for (i = 0; i + 16 <= n; i += 16) {
            for (j = 0; j < 16; j++) { sums[j] += (double)x[i + j] * (double)x[i + j]; }
        }
        for (; i < n; i++) { sums[i % 16] += (double)x[i] * (double)x[i]; }
        for (j = 8; j > 0; j /= 2) {
            for (i = 0; i < j; i++) { sums[i] += sums[i + j]; }
        }
        a->sums[item] = sums[0];
    }
}

/* ---- [tt:bodies.adamw] AdamW ----
 * m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
 * p -= lr (m / correction1 / (sqrt(v / correction2) + eps) + weight_decay p).
 * Source: arXiv 1711.05101, algorithm 2. */
static void TTI_K(adamw)(const void *args, float *scratch, size_t begin, size_t end) {
    const tt_adamw_args *a = (const tt_adamw_args *)args;
    const TTI_V beta1 = TTI_SET(a->beta1), beta2 = TTI_SET(a->beta2);
    const TTI_V lr = TTI_SET(a->lr), one = TTI_SET(1.0f);
    size_t i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_V p = TTI_NEXT(a->p), g = TTI_NEXT(a->g) * TTI_SET(a->grad_scale), m, v, step;
        m = TTI_FMA(beta1, TTI_NEXT(a->m), (one - beta1) * g);
        v = TTI_FMA(beta2, TTI_NEXT(a->v), (one - beta2) * g * g);
        step = m / TTI_SET(a->correction1) / (TTI_SQRT(v / TTI_SET(a->correction2)) + TTI_SET(a->eps));
        TTI_K(store)(a->m + i, m, end - i);
        TTI_K(store)(a->v + i, v, end - i);
        TTI_K(store)(a->p + i, p - lr * (step + TTI_SET(a->weight_decay) * p), end - i);
    }
}

/* ---- [tt:bodies.norms] norms ----
 * y = x r w,  r = 1 / sqrt(mean(x^2) + eps).                Source: RMSNorm, arXiv 1910.07467, eq. 4.
 * y = (x - mean) r w + b,  r = 1 / sqrt(var + eps).         Source: LayerNorm, arXiv 1607.06450, eq. 3.
 * With n = (x - mean) r and g = dy w:  dx += r (g - mean(g) - n mean(g n)), mean(g) only for LayerNorm;
 * dw += dy n and db += dy, each column summed over the rows in order. */
static void TTI_K(norm)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_norm_args *a = (const tti_norm_args *)args;
    size_t row, i, dim = a->dim;
    (void)scratch;
    for (row = begin; row < end; row++) {
        const float *x = a->x + row * dim;
        TTI_V sum = TTI_SET(0.0f), square = sum, mean = sum, r;
        float rstd;
        if (a->mean) {
            TTI_EACH(i, 0, dim) { sum = sum + TTI_K(load)(x + i, dim - i); }
            a->mean[row] = TTI_K(sum)(sum) / (float)dim;
            mean = TTI_SET(a->mean[row]);
        }
        TTI_EACH(i, 0, dim) {      /* what lies beyond the row counts as the mean */
            TTI_V d = TTI_K(load_fill)(x + i, dim - i, a->mean ? a->mean[row] : 0.0f) - mean;
            square = TTI_FMA(d, d, square);
        }
        rstd = 1.0f / sqrtf(TTI_K(sum)(square) / (float)dim + a->eps);
        a->rstd[row] = rstd;
        r = TTI_SET(rstd);
        TTI_EACH(i, 0, dim) {
            TTI_V y = (TTI_K(load)(x + i, dim - i) - mean) * r * TTI_K(load)(a->w + i, dim - i);
            if (a->b) { y = y + TTI_K(load)(a->b + i, dim - i); }
            TTI_K(store)(a->y + row * dim + i, y, dim - i);
        }
    }
}

/* dx += r (g - mean(g) - n mean(g n)) with g = dy w and n = (x - mean) r; RMSNorm has no mean(g). Two passes
 * over a row, which the first has brought into the cache. */
static void TTI_K(norm_dx)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_norm_args *a = (const tti_norm_args *)args;
    size_t row, i, dim = a->dim;
    (void)scratch;
    for (row = begin; row < end; row++) {
        const float *x = a->x + row * dim, *dy = a->dy + row * dim;
        const TTI_V mean = TTI_SET(a->mean ? a->mean[row] : 0.0f), r = TTI_SET(a->rstd[row]);
        TTI_V sum = TTI_SET(0.0f), dot = sum;
        TTI_EACH(i, 0, dim) {
            TTI_V g = TTI_K(load)(dy + i, dim - i) * TTI_K(load)(a->w + i, dim - i);
            sum = sum + g;
            dot = TTI_FMA(g, (TTI_K(load)(x + i, dim - i) - mean) * r, dot);
        }
        sum = TTI_SET(a->mean ? TTI_K(sum)(sum) / (float)dim : 0.0f);
        dot = TTI_SET(TTI_K(sum)(dot) / (float)dim);
        TTI_EACH(i, 0, dim) {
            float *to = a->dx + row * dim + i;
            TTI_V g = TTI_K(load)(dy + i, dim - i) * TTI_K(load)(a->w + i, dim - i);
            TTI_V n = (TTI_K(load)(x + i, dim - i) - mean) * r;
            TTI_K(store)(to, TTI_FMA(r, g - sum - n * dot, TTI_K(load)(to, dim - i)), dim - i);
        }
    }
}

/* dw += dy (x - mean) r and db += dy, a vector of columns at a time and rows in order, so that the sums are
 * the same for any number of threads. */
static void TTI_K(norm_dw)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_norm_args *a = (const tti_norm_args *)args;
    size_t row, i;
    (void)scratch;
    TTI_EACH(i, begin, end) {
        TTI_V dw = a->dw ? TTI_K(load)(a->dw + i, end - i) : TTI_SET(0.0f);
        TTI_V db = a->db ? TTI_K(load)(a->db + i, end - i) : TTI_SET(0.0f);
        for (row = 0; row < a->n; row++) {
            TTI_V dy = TTI_K(load)(a->dy + row * a->dim + i, end - i), x;
            if (a->dw) {
                x = TTI_K(load)(a->x + row * a->dim + i, end - i) - TTI_SET(a->mean ? a->mean[row] : 0.0f);
                dw = TTI_FMA(dy, x * TTI_SET(a->rstd[row]), dw);
            }
            db = db + dy;
        }
        if (a->dw) { TTI_K(store)(a->dw + i, dw, end - i); }
        if (a->db) { TTI_K(store)(a->db + i, db, end - i); }
    }
}

/* ---- [tt:bodies.rope] rotary embedding, halves as in Llama ----
 * y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin;  the inverse turns by -angle and adds to y.
 * Source: arXiv 2104.09864, eq. 34. */
static void TTI_K(rope)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_rope_args *a = (const tti_rope_args *)args;
    const TTI_V sign = TTI_SET(a->inverse ? -1.0f : 1.0f);
    size_t half = a->head_dim / 2, row, head, i;
    (void)scratch;
    for (row = begin; row < end; row++) {
        size_t angles = (size_t)a->positions[row] * half;
        for (head = 0; head < a->heads; head++) {
            const float *x = a->x + (row * a->heads + head) * a->head_dim;
            float *y = a->y + (row * a->heads + head) * a->head_dim;
            TTI_EACH(i, 0, half) {
                TTI_V x1 = TTI_K(load)(x + i, half - i), x2 = TTI_K(load)(x + half + i, half - i);
                TTI_V cosine = TTI_K(load)(a->cosines + angles + i, half - i);
                TTI_V sine = TTI_K(load)(a->sines + angles + i, half - i) * sign;
                TTI_V y1 = x1 * cosine - x2 * sine, y2 = x2 * cosine + x1 * sine;
                if (a->inverse) {
                    y1 = y1 + TTI_K(load)(y + i, half - i);
                    y2 = y2 + TTI_K(load)(y + half + i, half - i);
                }
                TTI_K(store)(y + i, y1, half - i);
                TTI_K(store)(y + half + i, y2, half - i);
            }
        }
    }
}

/* ---- [tt:bodies.logprobs] a block of logits, see [tt:kernels.softmax]: items are rows ---- */
static void TTI_K(logits_scan)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_logits_args *l = (const tti_logits_args *)args;
    const TTI_V factor = TTI_SET(l->inv_temperature), low = TTI_SET(-104.0f);      /* 0 log 0 is to be 0 */
    size_t row, i, n = l->columns;
    (void)scratch;
    for (row = begin; row < end; row++) {
        const float *z = l->z + row * l->stride;
        tti_softmax *state = l->states + row;
        TTI_V top = TTI_SET(state->max), sum = TTI_SET(0.0f), dot = sum;
        float max;
        size_t target = (size_t)l->targets[row];
        TTI_EACH(i, 0, n) { top = TTI_MAX(TTI_K(load_fill)(z + i, n - i, -HUGE_VALF) * factor, top); }
        max = TTI_K(max)(top);
        top = TTI_SET(max);
        TTI_EACH(i, 0, n) {
            TTI_V d = TTI_K(load_fill)(z + i, n - i, -HUGE_VALF) * factor - top, e = TTI_K(exp)(d);
            sum = sum + e;
            dot = TTI_FMA(e, TTI_MAX(low, d), dot);
        }
        tti_softmax_merge(state, max, TTI_K(sum)(sum), TTI_K(sum)(dot));
        if (target >= l->first && target - l->first < n) {
            state->target = z[target - l->first] * l->inv_temperature;
        }
    }
}

/* dz = inv_temperature (dlogp (1[target] - p) - dH p (log p + H)), over z in place. */
static void TTI_K(logits_back)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_logits_args *l = (const tti_logits_args *)args;
    const TTI_V factor = TTI_SET(l->inv_temperature), low = TTI_SET(-104.0f);
    size_t row, i, n = l->columns;
    (void)scratch;
    for (row = begin; row < end; row++) {
        float *z = l->dz + row * l->stride;
        float dlogp = l->dlogprobs ? l->dlogprobs[row] : 0.0f, dh = l->dentropy ? l->dentropy[row] : 0.0f;
        const TTI_V lse = TTI_SET(l->lse[row]), h = TTI_SET(l->dentropy ? l->entropy[row] : 0.0f);
        size_t target = (size_t)l->targets[row];
        TTI_EACH(i, 0, n) {
            TTI_V logp = TTI_K(load)(z + i, n - i) * factor - lse, p = TTI_K(exp)(logp);
            TTI_V slope = TTI_FMA(TTI_SET(dh), TTI_MAX(low, logp) + h, TTI_SET(dlogp));
            TTI_K(store)(z + i, TTI_SET(-l->inv_temperature) * p * slope, n - i);
        }
        if (target >= l->first && target - l->first < n) {
            z[target - l->first] += l->inv_temperature * dlogp;
        }
    }
}

/* ---- [tt:bodies.packing] factors into panels, see [tt:kernels.product] ----
 * Three ways, by how the factor lies in memory: lanes side by side (rows are copied), k side by side
 * (blocks of 4 x 4 are turned in registers), or neither. */
TTI_INLINE void TTI_K(store_pair)(float *to, size_t width, TTI_V v, size_t lanes) {
    TTI_K(store)(to, TTI_LOW(v), lanes);
    TTI_K(store)(to + width, TTI_HIGH(v), lanes);
}

/* Lanes side by side. k is outermost: a row of memory is read once, from end to end, and fetched before.
 * In panels narrower than a vector, but not than half of one, whole vectors are stored, since the next k
 * covers what hangs over; the last k is cut, as it would spoil the next panel. halves is a constant. */
TTI_INLINE void TTI_K(pack_rows_of)(float *to, const tti_packing *p, int halves) {
    const size_t rows_ahead = 16, line = 64 / sizeof(float), width = p->width, lanes = p->lanes, k = p->k;
    size_t k_step = p->from.k_step, i, lane, v, left, room;
    const float *row = p->from.values;
    const uint16_t *half = p->from.half;
    for (i = 0; i < k; i++) {
        int covered = i + 1 < k && 2 * width >= TTI_W;
        for (lane = 0; !halves && i + rows_ahead < k && lane < lanes; lane += line) {
            TTI_PREFETCH_L2(row + rows_ahead * k_step + lane);
        }
        for (lane = 0; lane < lanes; lane += width) {
            float *panel = to + lane * k + i * width;
            for (v = 0; v < width; v += TTI_W) {
                left = lanes > lane + v ? lanes - lane - v : 0;
                room = covered ? TTI_W : width - v;
                if (halves) { TTI_K(store)(panel + v, TTI_K(load_half)(half + lane + v, left), room); }
                else { TTI_K(store)(panel + v, TTI_K(load)(row + lane + v, left), room); }
            }
        }
        if (halves) { half += k_step; }
        else { row += k_step; }
    }
}

static void TTI_K(pack_rows)(float *to, const tti_packing *p) {
    if (p->from.half) { TTI_K(pack_rows_of)(to, p, 1); }
    else { TTI_K(pack_rows_of)(to, p, 0); }
}

#if TTI_W > 1
/* Columns k..k+3 of TTI_W rows, each a vector: every 128-bit lane turns a 4 x 4 block. QUAD loads 4
 * floats of the rows at p, p + 4 step, p + 8 step, ..., or of row `last` where there are fewer. */
#if TTI_SIMD_PASS == TTI_PASS_AVX512
TTI_INLINE __m512 TTI_K(quad)(const float *p, size_t step, size_t last) {
    const float *one = p + tti_least(last, 4) * step;
    const float *two = p + tti_least(last, 8) * step;
    const float *three = p + tti_least(last, 12) * step;
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    /* a masked load, where an insert would take the shuffle unit */
    v = _mm512_mask_broadcast_f32x4(v, 0x00F0, _mm_loadu_ps(one));
    v = _mm512_mask_broadcast_f32x4(v, 0x0F00, _mm_loadu_ps(two));
    return _mm512_mask_broadcast_f32x4(v, 0xF000, _mm_loadu_ps(three));
}

TTI_INLINE void TTI_K(turn)(__m512 v[4]) {
    __m512 t0 = _mm512_unpacklo_ps(v[0], v[1]), t1 = _mm512_unpackhi_ps(v[0], v[1]);
    __m512 t2 = _mm512_unpacklo_ps(v[2], v[3]), t3 = _mm512_unpackhi_ps(v[2], v[3]);
    v[0] = _mm512_shuffle_ps(t0, t2, 0x44);
    v[1] = _mm512_shuffle_ps(t0, t2, 0xEE);
    v[2] = _mm512_shuffle_ps(t1, t3, 0x44);
    v[3] = _mm512_shuffle_ps(t1, t3, 0xEE);
}
#elif TTI_SIMD_PASS == TTI_PASS_AVX2
TTI_INLINE __m256 TTI_K(quad)(const float *p, size_t step, size_t last) {
    const float *one = p + tti_least(last, 4) * step;
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(one), 1);
}

TTI_INLINE void TTI_K(turn)(__m256 v[4]) {
    __m256 t0 = _mm256_unpacklo_ps(v[0], v[1]), t1 = _mm256_unpackhi_ps(v[0], v[1]);
    __m256 t2 = _mm256_unpacklo_ps(v[2], v[3]), t3 = _mm256_unpackhi_ps(v[2], v[3]);
    v[0] = _mm256_shuffle_ps(t0, t2, 0x44);
    v[1] = _mm256_shuffle_ps(t0, t2, 0xEE);
    v[2] = _mm256_shuffle_ps(t1, t3, 0x44);
    v[3] = _mm256_shuffle_ps(t1, t3, 0xEE);
}
#else
TTI_INLINE TTI_V TTI_K(quad)(const float *p, size_t step, size_t last) {
    (void)step;
    (void)last;
    return TTI_LOAD(p);
}

#if TTI_SIMD_PASS == TTI_PASS_SIMD128
TTI_INLINE void TTI_K(turn)(TTI_V v[4]) {
    TTI_V t0 = {v[0][0], v[1][0], v[2][0], v[3][0]}, t1 = {v[0][1], v[1][1], v[2][1], v[3][1]};
    TTI_V t2 = {v[0][2], v[1][2], v[2][2], v[3][2]}, t3 = {v[0][3], v[1][3], v[2][3], v[3][3]};
    v[0] = t0;
    v[1] = t1;
    v[2] = t2;
    v[3] = t3;
}
#else

TTI_INLINE void TTI_K(turn)(float32x4_t v[4]) {
    float32x4x2_t t0 = vtrnq_f32(v[0], v[1]), t1 = vtrnq_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(t0.val[0]), vget_low_f32(t1.val[0]));
    v[1] = vcombine_f32(vget_low_f32(t0.val[1]), vget_low_f32(t1.val[1]));
    v[2] = vcombine_f32(vget_high_f32(t0.val[0]), vget_high_f32(t1.val[0]));
    v[3] = vcombine_f32(vget_high_f32(t0.val[1]), vget_high_f32(t1.val[1]));
}
#endif
#endif

/* `count` lanes (a multiple of 4, at most TTI_W) of one panel, 4 floats of k at a time. Pairs of bf16 are
 * moved as if they were floats, and become two of `to`. Returns the k that are done: a few may be left. */
static size_t TTI_K(pack_turned)(float *to, const tti_packing *p, size_t lane, size_t count) {
    const size_t line = 64 / sizeof(float), ahead = 4 * line, width = p->width;
    const tti_factor f = tti_factor_at(&p->from, lane, 0);
    int halves = f.half != NULL;
    const float *from = halves ? (const float *)(const void *)f.half : f.values;
    size_t step = halves ? f.lane_step / 2 : f.lane_step, k = halves ? p->k / 8 * 4 : p->k / 4 * 4, i, l;
    TTI_V v[4];
    for (i = 0; i < k; i += 4, from += 4, to += halves ? 8 * width : 4 * width) {
        for (l = i % line || i + ahead >= k ? count : 0; l < count; l++) {
            TTI_PREFETCH_L2(from + l * step + ahead);
        }
        TTI_UNROLL
        for (l = 0; l < 4; l++) { v[l] = TTI_K(quad)(from + l * step, step, count - 4); }
        TTI_K(turn)(v);
        if (halves) {
            TTI_UNROLL
            for (l = 0; l < 4; l++) { TTI_K(store_pair)(to + 2 * l * width, width, v[l], count); }
        } else {
            TTI_UNROLL
            for (l = 0; l < 4; l++) { TTI_K(store)(to + l * width, v[l], count); }
        }
    }
    return halves ? 2 * k : k;
}
#endif

/* The panel that begins with lane `first`, where lanes do not lie side by side. */
static void TTI_K(pack_lanes)(float *to, const tti_packing *p, size_t first) {
    const tti_factor *f = &p->from;
    size_t lane = first, end = tti_least(first + p->width, p->lanes), i, l;
#if TTI_W > 1
    while (f->k_step == 1 && !(f->half && f->lane_step % 2) && end - lane >= 4) {
        size_t count = tti_least((end - lane) / 4 * 4, TTI_W);
        for (i = TTI_K(pack_turned)(to + (lane - first), p, lane, count); i < p->k; i++) {
            float *row = to + i * p->width + (lane - first);
            for (l = 0; l < count; l++) { row[l] = tti_factor_value(f, lane + l, i); }
        }
        lane += count;
    }
#endif
    for (l = lane; l < first + p->width; l++) {
        for (i = 0; i < p->k; i++) {
            to[i * p->width + l - first] = l < end ? tti_factor_value(f, l, i) : 0.0f;
        }
    }
}

/* Panels of floats, side by side. */
static void TTI_K(pack_floats)(float *to, const tti_packing *p) {
    size_t padded, lane, i;
    if (p->from.lane_step == 1) {
        TTI_K(pack_rows)(to, p);
    } else {
        for (lane = 0; lane < p->lanes; lane += p->width) { TTI_K(pack_lanes)(to + lane * p->k, p, lane); }
    }
    if (p->rounds) {
        padded = (p->lanes + p->width - 1) / p->width * p->width * p->k;
        TTI_EACH(i, 0, padded) {
            TTI_K(store)(to + i, TTI_K(to_bf16)(TTI_K(load)(to + i, padded - i)), padded - i);
        }
    }
}

/* Panels of pairs. Where bf16 lie in pairs, these are moved as if they were floats; else panels of
 * floats are made beside, TTI_DEPTH of k at a time, and folded. */
static void TTI_K(pack_pairs)(float *to, const tti_packing *p, float *beside) {
    size_t lane, k0, i, l, width = p->width, steps = tti_panel_steps(1, p->k);
    tti_packing part = *p;
    part.rounds = 0;
    if (tti_factor_has_pairs(&p->from, p->k)) {
        part.from = tti_factor_of((const float *)(const void *)p->from.half, p->from.lane_step / 2, 1);
        part.k = steps;
        TTI_K(pack_floats)(to, &part);
        return;
    }
    for (lane = 0; lane < p->lanes; lane += width) {
        for (k0 = 0; k0 < p->k; k0 += part.k) {
            float *fold = to + lane * steps + k0 / 2 * width;
            part.from = tti_factor_at(&p->from, lane, k0);
            part.lanes = tti_least(p->lanes - lane, width);
            part.k = tti_least(p->k - k0, TTI_DEPTH);
            TTI_K(pack_floats)(beside, &part);
            if (part.k % 2) { memset(beside + part.k * width, 0, width * sizeof *beside); }
            for (i = 0; i < part.k; i += 2) {
                for (l = 0; l < width; l += TTI_W) {
                    const float *first = beside + i * width + l;
                    TTI_V low = TTI_K(to_bf16)(TTI_K(load)(first, width - l));
                    TTI_V high = TTI_K(to_bf16)(TTI_K(load)(first + width, width - l));
                    TTI_K(store)(fold + i / 2 * width + l, TTI_PAIR(low, high), width - l);
                }
            }
        }
    }
}

static void TTI_K(pack)(float *to, const tti_packing *p, float *beside) {
    if (p->pairs) { TTI_K(pack_pairs)(to, p, beside); }
    else { TTI_K(pack_floats)(to, p); }
}

/* Rows of the next tile, of `left`: so few kinds as every kind is code. */
TTI_INLINE size_t TTI_K(tile_rows)(size_t left) {
    if (left >= TTI_ROWS) { return TTI_ROWS; }
    return left >= 8 && TTI_ROWS > 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/* Rows x->m0 .. x->m1-1 of A. */
static void TTI_K(pack_rows_of_a)(const tti_gemm *g, const tti_panels *to, const tti_block *x,
                                  float *beside) {
    size_t whole = (x->m1 - x->m0) / TTI_ROWS * TTI_ROWS, i;
    tti_packing p;
    p.k = x->k1 - x->k0;
    p.rounds = g->rounds;
    p.pairs = g->dot;
    for (i = x->m0; i < x->m1; i += p.lanes) {
        p.from = tti_factor_at(&g->a, i, x->k0);
        p.width = TTI_K(tile_rows)(x->m1 - i);
        p.lanes = i == x->m0 && whole ? whole : p.width;
        TTI_K(pack)(tti_panel_at(to, i, p.width, x->k0), &p, beside);
    }
}

/* Columns x->n0 .. x->n1-1 of B. */
static void TTI_K(pack_columns_of_b)(const tti_gemm *g, float *to, const tti_block *x, int pairs,
                                     float *beside) {
    tti_packing p;
    p.from = tti_factor_at(&g->b, x->n0, x->k0);
    p.lanes = x->n1 - x->n0;
    p.width = TTI_COLUMNS;
    p.k = x->k1 - x->k0;
    p.rounds = g->rounds && !g->b.half;
    p.pairs = pairs;
    TTI_K(pack)(to, &p, beside);
}

/* Items: panels of A, k0 .. k1-1 of the block. */
static void TTI_K(pack_a)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_gemm *g = (const tti_gemm *)args;
    tti_block x = g->block;
    x.m0 = begin * TTI_ROWS;
    x.m1 = tti_least(end * TTI_ROWS, g->m);
    TTI_K(pack_rows_of_a)(g, &g->packed_a, &x, scratch);
}

/* Items: panels of the block's columns of B. */
static void TTI_K(pack_b)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_gemm *g = (const tti_gemm *)args;
    tti_block x = g->block;
    float *to;
    x.n0 = g->block.n0 + begin * TTI_COLUMNS;
    x.n1 = tti_least(g->block.n0 + end * TTI_COLUMNS, g->block.n1);
    to = tti_panel_at(&g->packed_b, x.n0, TTI_COLUMNS, x.k0);
    TTI_K(pack_columns_of_b)(g, to, &x, g->packed_b.pairs, scratch);
}

/* ---- [tt:bodies.tile] a tile of C ----
 * Its elements stay in registers while k runs. With a panel of A and one of B a step of k is, for a tile of 2
 * rows of 2 vectors,
 *
 *     b0 = LOAD(b);
 *     b1 = LOAD(b + TTI_W);
 *     x = SET(a[0]);
 *     sum00 = FMA(x, b0, sum00);
 *     sum01 = FMA(x, b1, sum01);
 *     x = SET(a[1]);
 *     sum10 = FMA(x, b0, sum10);
 *     sum11 = FMA(x, b1, sum11);
 *     a += 2;
 *     b += 2 * TTI_W;
 *
 * which is what the loops below become, as their lengths are constants. Whatever the shape, an element of C
 * goes through c = fma(a, b, c) for k = 0, 1, 2, ...; only who loads and stores c differs. */
/* c + x b of floats; of pairs of bf16 both products of each are added to c. That is one instruction of
 * AVX512-BF16: written as assembly, since its intrinsic wants all functions around it compiled for CPUs that
 * have it. */
TTI_INLINE TTI_V TTI_K(multiply_add)(TTI_V x, TTI_V b, TTI_V c, int pairs) {
#if TTI_SIMD_PASS == TTI_PASS_AVX512 && defined(TTI_DOT_BF16)
    if (pairs) {
        __asm__("vdpbf16ps {%2, %1, %0|%0, %1, %2}" : "+v"(c) : "v"(x), "v"(b));
        return c;
    }
#endif
    (void)pairs;
    return TTI_FMA(x, b, c);
}

/* One step: `rows` values of A, which are `a_row` apart, times a row of B. */
TTI_INLINE void TTI_K(tile_step)(TTI_V sum[][TTI_VECTORS], const float *a, size_t a_row, const float *b,
                                 size_t rows, int form) {
    TTI_V row_of_b[TTI_VECTORS], x;
    size_t r, v;
    TTI_UNROLL
    for (v = 0; v < TTI_VECTORS; v++) { row_of_b[v] = TTI_LOAD(b + v * TTI_W); }
    TTI_UNROLL
    for (r = 0; r < rows; r++) {
        x = TTI_SET(a[r * a_row]);
        TTI_UNROLL
        for (v = 0; v < TTI_VECTORS; v++) {
            sum[r][v] = TTI_K(multiply_add)(x, row_of_b[v], sum[r][v], form == TTI_IN_PAIRS);
        }
    }
}

/* rows and form are constants: each pair of them becomes code of its own. Where a panel comes from memory
 * (next), a single tile fetches from four places at once: memory serves several streams faster than one. */
TTI_INLINE void TTI_K(tile_of)(const tti_tile *t, size_t rows, int form) {
    const size_t a_row = form == TTI_ALONG_K ? t->a_step : 1, a_k = form == TTI_ALONG_K ? 1 : t->a_step;
    const size_t b_step = t->b_step, begin_step = t->begin_step;
    const size_t streams = t->every == 1 ? 4 : 1, every = t->every * streams;
    const size_t apart = t->k / streams * TTI_COLUMNS * sizeof(float);
    const size_t last = (TTI_COLUMNS - 1) * sizeof(float);
    const float *a = t->a, *b = t->b, *begin = t->begin;
    uintptr_t next = form == TTI_ALONG_K ? 0 : t->next;
    size_t k = t->k, c_step, r, v, s;
    float *c;
    TTI_V sum[12][TTI_VECTORS];
    TTI_UNROLL
    for (r = 0; r < rows; r++) {
        TTI_UNROLL
        for (v = 0; v < TTI_VECTORS; v++) {
            sum[r][v] = begin ? TTI_LOAD(begin + r * begin_step + v * TTI_W) : TTI_SET(0.0f);
        }
    }
    for (; next && k > every; next += TTI_COLUMNS * sizeof(float), k -= every) {
        for (s = 0; s < streams; s++) {
            TTI_PREFETCH_L2(next + s * apart);
            TTI_PREFETCH_L2(next + s * apart + last);
        }
        for (s = every; s > 0; s--, a += a_k, b += b_step) { TTI_K(tile_step)(sum, a, a_row, b, rows, form); }
    }
    for (; k > 0; k--, a += a_k, b += b_step) { TTI_K(tile_step)(sum, a, a_row, b, rows, form); }
    c = t->c;
    c_step = t->c_step;
    TTI_UNROLL
    for (r = 0; r < rows; r++) {
        TTI_UNROLL
        for (v = 0; v < TTI_VECTORS; v++) { TTI_STORE(c + r * c_step + v * TTI_W, sum[r][v]); }
    }
}

TTI_INLINE void TTI_K(tile_form)(const tti_tile *t, int form) {
    if (TTI_ROWS >= 12 && t->rows == 12) { TTI_K(tile_of)(t, 12, form); }
    else if (TTI_ROWS >= 8 && t->rows == 8) { TTI_K(tile_of)(t, 8, form); }
    else if (t->rows == 4) { TTI_K(tile_of)(t, 4, form); }
    else if (t->rows == 2) { TTI_K(tile_of)(t, 2, form); }
    else { TTI_K(tile_of)(t, 1, form); }
}

static void TTI_K(tile)(const tti_tile *t) {
#if TTI_SIMD_PASS == TTI_PASS_AVX512 && defined(TTI_DOT_BF16)
    if (t->form == TTI_IN_PAIRS) {
        TTI_K(tile_form)(t, TTI_IN_PAIRS);
        return;
    }
#endif
    if (t->form == TTI_SIDE_BY_SIDE) { TTI_K(tile_form)(t, TTI_SIDE_BY_SIDE); }
    else { TTI_K(tile_form)(t, TTI_ALONG_K); }
}

/* ---- [tt:bodies.sweep] one row of A against several panels of B ----
 * Nothing but the panels' way from memory counts: TTI_STREAMS of them are read at once, as memory serves
 * several streams faster than one. Widened pairs are added for k, then for k + 1: the bits are those of
 * floats. */
#define TTI_STREAMS 4
#define TTI_SWEEP_AHEAD 1024     /* bytes from what is read to what is fetched */

TTI_INLINE void TTI_K(sweep_step)(TTI_V sum[][TTI_VECTORS], TTI_V x, TTI_V y, const float *b, int kind) {
    size_t v;
    TTI_V w;
    TTI_UNROLL
    for (v = 0; v < TTI_VECTORS; v++) {
        w = TTI_LOAD(b + v * TTI_W);
        if (kind == TTI_WIDENED) {
            sum[0][v] = TTI_FMA(x, TTI_LOW(w), sum[0][v]);
            sum[0][v] = TTI_FMA(y, TTI_HIGH(w), sum[0][v]);
        } else {
            sum[0][v] = TTI_K(multiply_add)(x, w, sum[0][v], kind == TTI_PAIRS);
        }
    }
}

/* panels and kind are constants. Columns of begin and c lie side by side. */
TTI_INLINE void TTI_K(sweep_of)(const tti_sweep *s, size_t panels, int kind) {
    const size_t each = kind == TTI_WIDENED ? 2 : 1, a_step = s->a_step;
    const float *a = s->a, *begin = s->begin, *b[TTI_STREAMS];
    size_t k, p, v;
    TTI_V sum[TTI_STREAMS][TTI_VECTORS];
    TTI_UNROLL
    for (p = 0; p < panels; p++) {
        b[p] = s->b + p * s->apart;
        TTI_UNROLL
        for (v = 0; v < TTI_VECTORS; v++) {
            sum[p][v] = begin ? TTI_LOAD(begin + p * TTI_COLUMNS + v * TTI_W) : TTI_SET(0.0f);
        }
    }
    for (k = s->k; k > 0; k -= each, a += each * a_step) {
        TTI_V x = TTI_SET(a[0]), y = kind == TTI_WIDENED ? TTI_SET(a[a_step]) : x;
        TTI_UNROLL
        for (p = 0; p < panels; p++) {
            TTI_PREFETCH_L2((uintptr_t)b[p] + TTI_SWEEP_AHEAD);
            TTI_PREFETCH_L2((uintptr_t)(b[p] + TTI_COLUMNS - 1) + TTI_SWEEP_AHEAD);
            TTI_K(sweep_step)(sum + p, x, y, b[p], kind);
            b[p] += TTI_COLUMNS;
        }
    }
    TTI_UNROLL
    for (p = 0; p < panels; p++) {
        TTI_UNROLL
        for (v = 0; v < TTI_VECTORS; v++) { TTI_STORE(s->c + p * TTI_COLUMNS + v * TTI_W, sum[p][v]); }
    }
}

TTI_INLINE void TTI_K(sweep_kind)(const tti_sweep *s, int kind) {
    if (s->panels == TTI_STREAMS) { TTI_K(sweep_of)(s, TTI_STREAMS, kind); }
    else { TTI_K(sweep_of)(s, 1, kind); }
}

static void TTI_K(sweep)(const tti_gemm *g, const tti_sweep *s) {
#if TTI_SIMD_PASS == TTI_PASS_AVX512 && defined(TTI_DOT_BF16)
    if (g->dot) {
        TTI_K(sweep_kind)(s, TTI_PAIRS);
        return;
    }
#endif
    if (g->packed_b.pairs) { TTI_K(sweep_kind)(s, TTI_WIDENED); }
    else { TTI_K(sweep_kind)(s, TTI_FLOATS); }
}

/* ---- [tt:bodies.multiply] matrix product ---- */
/* What sums of C begin with at row i and column j, in the piece of k that begins at k0: C, the bias
 * (begin_step 0), or NULL for zero. */
TTI_INLINE const float *TTI_K(begin_of)(const tti_gemm *g, size_t i, size_t j, size_t k0) {
    if (k0 > 0 || g->accumulate) { return g->c + i * g->c_step + j; }
    return g->bias ? g->bias + j : NULL;
}

/* `columns` floats as a row of a tile, filled up with zeros; and back. */
TTI_INLINE void TTI_K(row_in)(float *row, const float *from, size_t columns) {
    size_t v;
    for (v = 0; v < TTI_COLUMNS; v += TTI_W) {
        TTI_STORE(row + v, columns > v ? TTI_K(load)(from + v, columns - v) : TTI_SET(0.0f));
    }
}

TTI_INLINE void TTI_K(row_out)(float *to, const float *row, size_t columns) {
    size_t v;
    for (v = 0; v < columns; v += TTI_W) { TTI_K(store)(to + v, TTI_LOAD(row + v), columns - v); }
}

/* A tile that sticks out of C, with some columns inside, is computed beside it. */
static void TTI_K(tile_beside)(tti_tile *t, size_t columns) {
    float beside[TTI_ROWS * TTI_COLUMNS], *c = t->c;
    size_t c_step = t->c_step, r;
    for (r = 0; t->begin && r < t->rows; r++) {
        TTI_K(row_in)(beside + r * TTI_COLUMNS, t->begin + r * t->begin_step, columns);
    }
    if (t->begin) { t->begin = beside; }
    t->c = beside;
    t->begin_step = t->c_step = TTI_COLUMNS;
    TTI_K(tile)(t);
    for (r = 0; r < t->rows; r++) { TTI_K(row_out)(c + r * c_step, beside + r * TTI_COLUMNS, columns); }
}

/* The tile at row i and column j of C, in the piece of k that begins at k0. */
TTI_INLINE void TTI_K(tile_at)(const tti_gemm *g, tti_tile *t, size_t i, size_t j, size_t k0) {
    t->c = g->c + i * g->c_step + j;
    t->c_step = g->c_step;
    t->begin = TTI_K(begin_of)(g, i, j, k0);
    t->begin_step = t->begin == t->c ? g->c_step : 0;
    if (g->n - j >= TTI_COLUMNS) { TTI_K(tile)(t); }
    else { TTI_K(tile_beside)(t, g->n - j); }
}

/* A block of C over at most TTI_DEPTH of k. Panels of A and B that nobody made before are made here,
 * those of B one by one. scratch: TTI_GEMM_SCRATCH floats. */
static void TTI_K(multiply_piece)(const tti_gemm *g, const tti_block *x, float *scratch) {
    float *panel = tti_aligned(scratch);
    tti_panels a = g->packed_a;
    size_t i, j, r, k = x->k1 - x->k0;
    tti_tile t;
    if (!a.data && tti_gemm_packs_a(g)) {
        a.data = panel + TTI_COLUMNS * TTI_DEPTH;
        a.lane = x->m0;
        a.k = x->k0;
        a.depth = k;
        TTI_K(pack_rows_of_a)(g, &a, x, NULL);
    }
    t.form = g->dot ? TTI_IN_PAIRS : a.data || g->a.lane_step == 1 ? TTI_SIDE_BY_SIDE : TTI_ALONG_K;
    t.k = tti_panel_steps(g->dot, k);
    t.next = 0;
    t.every = 1;
    for (j = x->n0; j < x->n1; j += TTI_COLUMNS) {
        int whole = x->n1 - j >= TTI_COLUMNS;
        t.b_step = TTI_COLUMNS;
        if (g->packed_b.data) {
            t.b = tti_panel_at(&g->packed_b, j, TTI_COLUMNS, x->k0);
        } else if (whole && g->b.lane_step == 1 && !g->b.half && !g->rounds) {   /* B's rows where they lie */
            t.b = g->b.values + j + x->k0 * g->b.k_step;
            t.b_step = g->b.k_step;
        } else {
            tti_block columns = *x;
            columns.n0 = j;
            columns.n1 = tti_least(j + TTI_COLUMNS, x->n1);
            TTI_K(pack_columns_of_b)(g, panel, &columns, g->dot, panel);
            t.b = panel;
        }
        for (i = x->m0; i < x->m1; i += t.rows) {
            float *c = g->c + i * g->c_step + j;
            t.rows = TTI_K(tile_rows)(x->m1 - i);
            t.a = a.data ? tti_panel_at(&a, i, t.rows, x->k0) : tti_factor_at(&g->a, i, x->k0).values;
            t.a_step = a.data ? t.rows : g->a.lane_step == 1 ? g->a.k_step : g->a.lane_step;
            for (r = t.rows; r < 2 * t.rows && i + r < x->m1; r++) {                /* C of the next tile */
                TTI_PREFETCH(c + r * g->c_step);
                TTI_PREFETCH(c + r * g->c_step + tti_least(x->n1 - j, TTI_COLUMNS) - 1);
            }
            TTI_K(tile_at)(g, &t, i, j, x->k0);
        }
    }
}

/* y of a block's rows and columns, just after the last k, while C is in the cache. */
static void TTI_K(activate)(const tti_gemm *g, const tti_block *x) {
    tti_unary_args a = TT_INIT;
    size_t i;
    a.op = g->activation;
    for (i = x->m0; g->activation && i < x->m1; i++) {
        a.x = g->c + i * g->c_step;
        a.y = g->y + i * g->c_step;
        TTI_K(unary)(&a, NULL, x->n0, x->n1);
    }
}

/* A block of C over k0 .. k1-1. */
static void TTI_K(multiply)(const tti_gemm *g, const tti_block *x, float *scratch) {
    tti_block piece = *x;
    do {
        piece.k1 = piece.k0 + tti_least(x->k1 - piece.k0, TTI_DEPTH);
        TTI_K(multiply_piece)(g, &piece, scratch);
        piece.k0 = piece.k1;
    } while (piece.k0 < x->k1);
    if (x->k1 == g->k) { TTI_K(activate)(g, x); }
}

/* One or two rows against panels that were made before, from column n0 on: one of them or TTI_STREAMS.
 * Two rows take pieces of k, so that the second finds them in the cache. */
static void TTI_K(sweep_rows)(const tti_gemm *g, size_t n0, size_t panels) {
    size_t columns = tti_least(g->n - n0, TTI_COLUMNS), k0 = 0, k, i;
    float beside[TTI_COLUMNS];
    tti_sweep s;
    s.panels = panels;
    s.apart = g->packed_b.depth * TTI_COLUMNS;
    do {
        k = g->m == 1 ? g->k : tti_least(g->k - k0, TTI_DEPTH);
        s.k = tti_panel_steps(g->dot, k);
        s.b = tti_panel_at(&g->packed_b, n0, TTI_COLUMNS, k0);
        for (i = 0; i < g->m; i++) {
            float *c = g->c + i * g->c_step + n0;
            s.a = g->packed_a.data ? tti_panel_at(&g->packed_a, 0, g->m, k0) + i
                                   : tti_factor_at(&g->a, i, k0).values;
            s.a_step = g->packed_a.data ? g->m : g->a.k_step;
            s.begin = TTI_K(begin_of)(g, i, n0, k0);
            s.c = c;
            if (columns < TTI_COLUMNS) {
                if (s.begin) { TTI_K(row_in)(beside, s.begin, columns); }
                s.begin = s.begin ? beside : NULL;
                s.c = beside;
            }
            TTI_K(sweep)(g, &s);
            if (columns < TTI_COLUMNS) { TTI_K(row_out)(c, beside, columns); }
        }
        k0 += k;
    } while (k0 < g->k);
}

/* More rows, but few, all packed: the panel comes from memory, once. While tiles multiply one piece of
 * it, each fetches its share of the piece that follows. Of pairs a piece is widened first, unless tiles
 * multiply pairs. */
static void TTI_K(stream_rows)(const tti_gemm *g, size_t n0, float *scratch) {
    const tti_panels *panels = &g->packed_b;
    size_t tiles = (g->m + TTI_ROWS - 1) / TTI_ROWS, k0 = 0, k, steps, i;
    int widen = panels->pairs && !g->dot;
    float *wide = tti_aligned(scratch);
    tti_tile t = TT_INIT;
    t.form = g->dot ? TTI_IN_PAIRS : TTI_SIDE_BY_SIDE;
    t.b_step = TTI_COLUMNS;
    t.every = widen ? 2 * tiles : tiles;
    do {
        uintptr_t next;
        k = tti_least(g->k - k0, TTI_DEPTH);
        steps = tti_panel_steps(panels->pairs, k);
        t.k = tti_panel_steps(g->dot, k);
        t.b = tti_panel_at(panels, n0, TTI_COLUMNS, k0);
        next = (uintptr_t)t.b + steps * TTI_COLUMNS * sizeof(float);
        for (i = 0; widen && i < steps * TTI_COLUMNS; i += TTI_W) {
            float *to = wide + i / TTI_COLUMNS * 2 * TTI_COLUMNS + i % TTI_COLUMNS;
            TTI_K(store_pair)(to, TTI_COLUMNS, TTI_LOAD(t.b + i), TTI_W);
        }
        if (widen) { t.b = wide; }
        for (i = 0; i < g->m; i += t.rows) {
            t.rows = TTI_K(tile_rows)(g->m - i);
            t.a = tti_panel_at(&g->packed_a, i, t.rows, k0);
            t.a_step = t.rows;
            t.next = next + i / TTI_ROWS * (steps / tiles) * TTI_COLUMNS * sizeof(float);
            TTI_K(tile_at)(g, &t, i, n0, k0);
        }
        k0 += k;
    } while (k0 < g->k);
}

/* Items: panels of B; all rows of C. */
static void TTI_K(multiply_panels)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_gemm *g = (const tti_gemm *)args;
    tti_block x = g->block;
    size_t p, panels;
    for (p = begin; p < end; p += panels) {
        size_t whole = (g->n - p * TTI_COLUMNS) / TTI_COLUMNS;
        int streams = g->packed_b.data && g->m <= 2 && tti_least(end - p, whole) >= TTI_STREAMS;
        panels = streams ? TTI_STREAMS : 1;
        x.n0 = p * TTI_COLUMNS;
        x.n1 = tti_least(x.n0 + panels * TTI_COLUMNS, g->n);
        if (!g->packed_b.data) {
            TTI_K(multiply)(g, &x, scratch);
        } else {
            if (g->m <= 2) { TTI_K(sweep_rows)(g, x.n0, panels); }
            else { TTI_K(stream_rows)(g, x.n0, scratch); }
            TTI_K(activate)(g, &x);
        }
    }
}

/* Items: blocks of g->item_rows rows times groups of TTI_ITEM_COLUMNS columns. */
static void TTI_K(multiply_blocks)(const void *args, float *scratch, size_t begin, size_t end) {
    const tti_gemm *g = (const tti_gemm *)args;
    size_t groups = (g->block.n1 - g->block.n0 + TTI_ITEM_COLUMNS - 1) / TTI_ITEM_COLUMNS, item;
    tti_block x = g->block;
    for (item = begin; item < end; item++) {
        x.m0 = item / groups * g->item_rows;
        x.m1 = tti_least(x.m0 + g->item_rows, g->m);
        x.n0 = g->block.n0 + item % groups * TTI_ITEM_COLUMNS;
        x.n1 = tti_least(x.n0 + TTI_ITEM_COLUMNS, g->block.n1);
        TTI_K(multiply)(g, &x, scratch);
    }
}

/* ---- [tt:bodies.attention] attention, forward ----
 * s = scale q k',  p = exp(s - max),  out = p v / sum of p.    Source: arXiv 2307.08691, algorithm 1.
 * An item is a block of queries and a key-value head ([tt:kernels.queries]). Keys come in blocks of TTI_KEYS
 * that begin at key 0, so a row meets the same blocks whether it is decoded alone or among a whole prompt,
 * and takes part only up to its own position: decoding has the bits of training. */
TTI_INLINE void TTI_K(scale)(float *x, float factor, size_t n) {
    size_t i;
    TTI_EACH(i, 0, n) { TTI_K(store)(x + i, TTI_K(load)(x + i, n - i) * TTI_SET(factor), n - i); }
}

/* Scores to probabilities below a running maximum: s = exp(s - max); old sums and out shrink by exp(old
 * max - max). */
static void TTI_K(softmax_step)(float *s, size_t n, float *max, float *sum, float *out, size_t dim) {
    TTI_V top = TTI_SET(*max), total = TTI_SET(0.0f);
    float t[TTI_W], shrink;
    size_t i;
    for (i = n; i < TTI_UP(n); i++) { s[i] = -HUGE_VALF; }
    TTI_EACH(i, 0, n) { top = TTI_MAX(TTI_LOAD(s + i), top); }
    top = TTI_SET(TTI_K(max)(top));
    TTI_EACH(i, 0, n) {
        TTI_V e = TTI_K(exp)(TTI_LOAD(s + i) - top);
        TTI_STORE(s + i, e);
        total = total + e;
    }
    TTI_STORE(t, TTI_K(exp)(TTI_SET(*max) - top));
    shrink = t[0];
    TTI_STORE(t, top);
    *max = t[0];
    *sum = *sum * shrink + TTI_K(sum)(total);
    TTI_K(scale)(out, shrink, dim);
}

/* Of `keys` keys from key0 on, how many a row sees. */
TTI_INLINE size_t TTI_K(limit)(const tti_queries *u, size_t row, size_t key0, size_t keys) {
    size_t limit = u->position + row / u->group + 1;
    return limit <= key0 ? 0 : tti_least(limit - key0, keys);
}

/* Where a row of the block begins in q, out and their gradients, in heads. */
TTI_INLINE size_t TTI_K(place)(const tti_queries *u, size_t row, size_t heads) {
    return (u->token + row / u->group) * heads + u->head + row % u->group;
}

/* Rows of x [n_tokens, heads * dim] that belong to u, times factor, side by side. */
static void TTI_K(collect)(const tt_attention_args *a, const tti_queries *u, float *to, const float *x,
                           float factor) {
    size_t dim = (size_t)a->head_dim, heads = (size_t)a->n_heads, row;
    for (row = 0; row < u->rows; row++) {
        memcpy(to + row * dim, x + TTI_K(place)(u, row, heads) * dim, dim * sizeof(float));
    }
    if (factor != 1.0f) { TTI_K(scale)(to, factor, u->rows * dim); }
}

/* s[rows, keys] = q k' for k from key0 on. */
static void TTI_K(scores)(const tt_attention_args *a, const tti_queries *u, size_t key0, size_t keys,
                          const float *q, float *s, float *scratch) {
    size_t dim = (size_t)a->head_dim, kv_stride = (size_t)a->n_kv_heads * dim;
    const float *k = a->k + tti_key_row(u, key0) * kv_stride;
    tti_gemm g = tti_gemm_sized(u->rows, keys, dim, s, TTI_KEYS);
    g.a = tti_factor_of(q, dim, 1);
    if (a->key_tiles) {      /* a cache: panels of all heads follow each other */
        g.packed_b.data = (float *)(uintptr_t)(k + u->kv_head * dim * TTI_COLUMNS);
        g.packed_b.depth = kv_stride;
    } else {
        g.b = tti_factor_of(k + u->kv_head * dim, kv_stride, 1);
    }
    TTI_K(multiply)(&g, &g.block, scratch);
}

/* out[rows, dim] += p v, where row i sees the keys of p and v up to its limit: rows in groups up to
 * their common limit, then each row to its own. One description, multiplied by blocks. */
static void TTI_K(attend)(const tt_attention_args *a, const tti_queries *u, size_t key0, size_t keys,
                          const float *p, float *out, float *scratch) {
    size_t dim = (size_t)a->head_dim, kv_stride = (size_t)a->n_kv_heads * dim, row, i, rows;
    tti_gemm g = tti_gemm_sized(u->rows, dim, keys, out, dim);
    tti_block x = g.block;
    g.a = tti_factor_of(p, TTI_KEYS, 1);
    g.b = tti_factor_of(a->v + tti_key_row(u, key0) * kv_stride + u->kv_head * dim, 1, kv_stride);
    g.accumulate = 1;
    for (row = 0; row < u->rows; row += rows) {
        size_t common = TTI_K(limit)(u, row, key0, keys);
        rows = common == keys ? u->rows - row : tti_least(u->rows - row, TTI_ROWS);
        x.m0 = row;
        x.m1 = row + rows;
        x.k0 = 0;
        x.k1 = common;
        if (common > 0) { TTI_K(multiply)(&g, &x, scratch); }
        x.k0 = common;
        for (i = row; i < row + rows; i++) {
            x.m0 = i;
            x.m1 = i + 1;
            x.k1 = TTI_K(limit)(u, i, key0, keys);
            if (x.k1 > common) { TTI_K(multiply)(&g, &x, scratch); }
        }
    }
}

/* Few rows wait for keys and values, which lie in pieces too short for the CPU to foresee: those of the
 * block at key0, in tiles of `lanes` rows. */
static void TTI_K(fetch)(const tt_attention_args *a, const tti_queries *u, size_t key0, const float *from,
                         size_t lanes) {
    size_t dim = (size_t)a->head_dim, kv_stride = (size_t)a->n_kv_heads * dim;
    size_t n_keys = u->position + u->rows / u->group, keys = tti_least(n_keys - key0, TTI_KEYS), row, i;
    if (key0 < u->shared) { return; }      /* the sequence before has just read them */
    from += tti_key_row(u, key0) * kv_stride + u->kv_head * dim * lanes;
    for (row = 0; row < keys; row += lanes) {
        for (i = 0; i < dim * lanes; i += 64 / sizeof *from) { TTI_PREFETCH_L2(from + row * kv_stride + i); }
    }
}

/* out = out / sum and lse = max + log(sum), to their places. */
static void TTI_K(finish)(const tt_attention_args *a, const tti_queries *u, const float *out,
                          const float *max, const float *sum) {
    size_t dim = (size_t)a->head_dim, row, d;
    for (row = 0; row < u->rows; row++) {
        size_t place = TTI_K(place)(u, row, (size_t)a->n_heads);
        TTI_EACH(d, 0, dim) {
            TTI_V value = TTI_K(load)(out + row * dim + d, dim - d) / TTI_SET(sum[row]);
            TTI_K(store)(a->out + place * dim + d, value, dim - d);
        }
        if (a->lse) { a->lse[place] = max[row] + logf(sum[row]); }
    }
}

/* A block of queries u; `then` comes after it, or is NULL. */
static void TTI_K(attend_block)(const tt_attention_args *a, const tti_queries *u, const tti_queries *then,
                                float *scratch) {
    size_t dim = (size_t)a->head_dim, n_keys = u->position + u->rows / u->group, key0, row;
    size_t lanes = a->key_tiles ? TTI_COLUMNS : 1;
    int few = u->rows < TTI_ROWS;
    float *q = scratch, *out = q + u->rows * dim, *s = out + u->rows * dim;
    float *max = s + u->rows * TTI_KEYS, *sum = max + u->rows, *rest = sum + u->rows;
    TTI_K(collect)(a, u, q, a->q, a->scale);
    memset(out, 0, u->rows * dim * sizeof(float));
    for (row = 0; row < u->rows; row++) {
        max[row] = -HUGE_VALF;
        sum[row] = 0.0f;
    }
    for (key0 = 0; key0 < n_keys; key0 += TTI_KEYS) {
        size_t keys = tti_least(n_keys - key0, TTI_KEYS);
        if (few) { TTI_K(fetch)(a, u, key0, a->v, 1); }
        TTI_K(scores)(a, u, key0, keys, q, s, rest);
        if (few && key0 + keys < n_keys) { TTI_K(fetch)(a, u, key0 + keys, a->k, lanes); }
        else if (few && then) { TTI_K(fetch)(a, then, 0, a->k, lanes); }
        for (row = 0; row < u->rows; row++) {
            size_t limit = TTI_K(limit)(u, row, key0, keys);
            if (limit == 0) { continue; }
            TTI_K(softmax_step)(s + row * TTI_KEYS, limit, max + row, sum + row, out + row * dim, dim);
        }
        TTI_K(attend)(a, u, key0, keys, s, out, rest);
    }
    TTI_K(finish)(a, u, out, max, sum);
}

static void TTI_K(attention_forward)(const void *args, float *scratch, size_t begin, size_t end) {
    const tt_attention_args *a = (const tt_attention_args *)args;
    tti_walk walk = TT_INIT;
    tti_queries u, then = tti_queries_of(a, begin, &walk);
    size_t item;
    for (item = begin; item < end; item++) {
        u = then;
        if (item + 1 < end) { then = tti_queries_of(a, item + 1, &walk); }
        TTI_K(attend_block)(a, &u, item + 1 < end ? &then : NULL, scratch);
    }
}

/* ---- [tt:bodies.attention_backward] attention, backward ----
 * p = exp(s - lse);  ds = p (dp - delta),  dp = dout v',  delta = sum over channels of dout out;
 * dv += p' dout;  dk += ds' (scale q);  dq += scale ds k.      Source: arXiv 2307.08691, algorithm 2. */
static float TTI_K(dot)(const float *x, const float *y, size_t n) {
    TTI_V total = TTI_SET(0.0f);
    size_t i;
    TTI_EACH(i, 0, n) { total = TTI_FMA(TTI_K(load)(x + i, n - i), TTI_K(load)(y + i, n - i), total); }
    return TTI_K(sum)(total);
}

/* s to p and dp to ds, in place; 0 beyond the row's limit. */
static void TTI_K(softmax_back)(float *s, float *dp, size_t limit, size_t keys, float lse, float delta) {
    size_t i;
    for (i = limit; i < TTI_UP(keys); i++) {
        s[i] = -HUGE_VALF;
        dp[i] = 0.0f;
    }
    TTI_EACH(i, 0, keys) {
        TTI_V p = TTI_K(exp)(TTI_LOAD(s + i) - TTI_SET(lse));
        TTI_STORE(s + i, p);
        TTI_STORE(dp + i, p * (TTI_LOAD(dp + i) - TTI_SET(delta)));
    }
}

/* The part of all keys from key0 on. */
static void TTI_K(attention_back_keys)(const tt_attention_args *a, const tti_queries *u,
                                       const tti_queries_back *w, size_t key0, size_t keys) {
    size_t dim = (size_t)a->head_dim, kv_stride = (size_t)a->n_kv_heads * dim, row;
    size_t at = (u->key_row + key0) * kv_stride + u->kv_head * dim;
    tti_gemm g = tti_gemm_sized(u->rows, keys, dim, w->s, TTI_KEYS);              /* s = q k' */
    g.a = tti_factor_of(w->q, dim, 1);
    g.b = tti_factor_of(a->k + at, kv_stride, 1);
    TTI_K(multiply)(&g, &g.block, w->rest);
    g.a = tti_factor_of(w->dout, dim, 1);                                         /* dp = dout v' */
    g.b = tti_factor_of(a->v + at, kv_stride, 1);
    g.c = w->dp;
    TTI_K(multiply)(&g, &g.block, w->rest);
    for (row = 0; row < u->rows; row++) {
        float *s = w->s + row * TTI_KEYS, *dp = w->dp + row * TTI_KEYS;
        TTI_K(softmax_back)(s, dp, TTI_K(limit)(u, row, key0, keys), keys, w->lse[row], w->delta[row]);
    }
    if (a->dv) {                                                                  /* dv += p' dout */
        g = tti_gemm_sized(keys, dim, u->rows, a->dv + at, kv_stride);
        g.a = tti_factor_of(w->s, 1, TTI_KEYS);
        g.b = tti_factor_of(w->dout, 1, dim);
        g.accumulate = 1;
        TTI_K(multiply)(&g, &g.block, w->rest);
    }
    if (a->dk) {                                                                  /* dk += ds' scale q */
        g = tti_gemm_sized(keys, dim, u->rows, a->dk + at, kv_stride);
        g.a = tti_factor_of(w->dp, 1, TTI_KEYS);
        g.b = tti_factor_of(w->q, 1, dim);
        g.accumulate = 1;
        TTI_K(multiply)(&g, &g.block, w->rest);
    }
    g = tti_gemm_sized(u->rows, dim, keys, w->dq, dim);                           /* dq += ds k */
    g.a = tti_factor_of(w->dp, TTI_KEYS, 1);
    g.b = tti_factor_of(a->k + at, 1, kv_stride);
    g.accumulate = 1;
    TTI_K(multiply)(&g, &g.block, w->rest);
}

/* All for the queries u; dk and dv go on from what they hold. */
static void TTI_K(attention_back_block)(const tt_attention_args *a, const tti_queries *u, float *scratch) {
    size_t dim = (size_t)a->head_dim, heads = (size_t)a->n_heads, block = u->rows * dim;
    size_t n_keys = u->position + u->rows / u->group, key0, row, d;
    tti_queries_back w;
    w.q = scratch;
    w.dq = w.q + block;
    w.dout = w.dq + block;
    w.out = w.dout + block;
    w.s = w.out + block;
    w.dp = w.s + u->rows * TTI_KEYS;
    w.lse = w.dp + u->rows * TTI_KEYS;
    w.delta = w.lse + u->rows;
    w.rest = w.delta + u->rows;
    TTI_K(collect)(a, u, w.q, a->q, a->scale);
    TTI_K(collect)(a, u, w.dout, a->dout, 1.0f);
    TTI_K(collect)(a, u, w.out, a->out, 1.0f);
    memset(w.dq, 0, block * sizeof(float));
    for (row = 0; row < u->rows; row++) {
        w.lse[row] = a->lse[TTI_K(place)(u, row, heads)];
        w.delta[row] = TTI_K(dot)(w.dout + row * dim, w.out + row * dim, dim);
    }
    for (key0 = 0; key0 < n_keys; key0 += TTI_KEYS) {
        TTI_K(attention_back_keys)(a, u, &w, key0, tti_least(n_keys - key0, TTI_KEYS));
    }
    for (row = 0; a->dq && row < u->rows; row++) {
        float *to = a->dq + TTI_K(place)(u, row, heads) * dim;
        TTI_EACH(d, 0, dim) {
            TTI_V dq = TTI_K(load)(w.dq + row * dim + d, dim - d);
            TTI_K(store)(to + d, TTI_FMA(TTI_SET(a->scale), dq, TTI_K(load)(to + d, dim - d)), dim - d);
        }
    }
}

/* Items: sequence x key-value head. */
static void TTI_K(attention_backward)(const void *args, float *scratch, size_t begin, size_t end) {
    const tt_attention_args *a = (const tt_attention_args *)args;
    size_t kv_heads = (size_t)a->n_kv_heads, item, block;
    for (item = begin; item < end; item++) {
        size_t sequence = item / kv_heads, first = tti_first_block(a, sequence);
        size_t end_block = first + tti_sequence_blocks(a, sequence);
        tti_walk walk;
        walk.sequence = sequence;
        walk.first_block = first;
        for (block = first; block < end_block; block++) {
            tti_queries u = tti_queries_of(a, block * kv_heads + item % kv_heads, &walk);
            TTI_K(attention_back_block)(a, &u, scratch);
        }
    }
}

static const tti_kernels TTI_K(kernels) = {
    TTI_NAME, TTI_ROWS, TTI_COLUMNS
#define TTI_ENTRY(name) , TTI_K(name)
    TTI_KERNEL_LIST(TTI_ENTRY)
#undef TTI_ENTRY
};

#undef TTI_K
#undef TTI_NAME
#undef TTI_V
#undef TTI_W
#undef TTI_ROWS
#undef TTI_VECTORS
#undef TTI_SET
#undef TTI_LOAD
#undef TTI_STORE
#undef TTI_FIRST
#undef TTI_LOAD_PART
#undef TTI_STORE_PART
#undef TTI_FMA
#undef TTI_MAX
#undef TTI_MIN
#undef TTI_SQRT
#undef TTI_LT
#undef TTI_IF
#undef TTI_I
#undef TTI_TO_I
#undef TTI_FROM_I
#undef TTI_I_SET
#undef TTI_I_ADD
#undef TTI_I_AND
#undef TTI_I_LEFT
#undef TTI_I_RIGHT
#undef TTI_I_LOAD16
#if defined(__clang__)
#if TTI_SIMD_PASS == TTI_PASS_AVX512 || TTI_SIMD_PASS == TTI_PASS_AVX2
#pragma clang attribute pop
#endif
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC diagnostic pop
#pragma GCC pop_options
#elif defined(_MSC_VER)
#pragma fp_contract(on)
#endif
#endif /* TTI_SIMD_PASS */

/* ==== B. Unicode tables ====================================================================
 * What chapter 6 needs to know of characters, as tti_table_decode there reads it; printed by
 * tools/unicode_tables.py, which says where it comes from. */
#if defined(TTI_IMPLEMENTED) && !defined(TTI_SIMD_PASS) && !defined(TTI_UNICODE_TABLES)
#define TTI_UNICODE_TABLES

/* Unicode 16.0.0: first code point of a range * 8 + class. */
static const char *const tti_class_lines[] = {
    "0R;Q5TC5SJR>QLV<QEV;RC5VC5R97QJ>=3J77:F<UD<QIUK=R2]N:SN:[=;Q>q;MA7IqQ17A7IGA7;Q=;N797A7CMA<;9DQ3A7A7",
    ";T>:T>7;MC^NQqA7Aq97KR>`L<VDTqQ1ROSAQ7QI797T>l1J7<93A<C<4QD4<D<4<A7T4<R9XG9qIJUNO93<97AqpIp2X9>QI]=;",
    "S>:gI<Y<A7QEZ3R6[2>2>:>:>2R1VGQ1OW>RBQ9ZMU4R>Q1E3hG9=QBFQ;E:>KARqGA7T1=3WEVBAf=RC7SBRqX=R3qQ17F2AUEK",
    "=R3=C=Q2TAV=BQ1RGQ9UO9QqR6R3ZEUJ>X3]EC=T;=QCRE:BR>9T5B9QOAqAUq9QG97IOF3=QBF:FC7R62Q1q9M:BRqqBQ>A7>2F",
    "B9QqQ1qAUq9QG9q9q9qF2>Q2Q6:FBN2QIO97QJRD;M2RNB9R79G9Uq9QG9q9Q7F3=QJ>B>BA7SIE:BR>R9=Q:>B9QOAqAUq9QG9q",
    "9Q7F3=QBF:FBQNBQ1q9M:BR>99Q>RF379QqIG9OIq979qIqIGIROQ6Q2NB>JA7QF2SBS6S>Q3QO9G9UG9SOF3=QB>B>JQN:9GA7A",
    "E:BR>R2QF9=B9QO9G9UG9Rq9Q7F3=QB>B>JQN:QAq9E:BR>9E2S6KR79G9Z=;=QB>B>K7Q9M4QGM:BTF9Qq>B9TqIUO9R797AQGN",
    "2Q6Q:>2>QJQBR>F:S9p53EQBQ9QMQJ:R>YIq979Q79UO979RE3ER37AQ797>QB:R>AOX17UN:QBTN>2>2>2Q6;QO9XOQ6TJ>;Q=",
    "RB>XJR>2^9ZMTK9R>QAQEKQ5C=CEQCMKS=RK=4RDJDY<<4Q<4EZC9<DRb79OAQG979OAZ79OAX79OAQG979OASG9^79OA`GFBR:",
    "TNISOT4e<EQ;ITjOAT:6VqQ9bGJGQOQITEJR9TMBRITE:S1S79G>:S1]5WJI7Q1=2BR>QBR>T>B>4R>QAf7QIQ=;XE37Q9aqRAWG",
    ">RJQ6RJRBRqWqAQ7RIZOQ1VqQBRFY9UMQ2Q1]=R:>W2F4R>QBR>S97R6WBp>Q3[MT3QOJR>T>R2S6CWES3ARq[5S:S1Y5TJR2R>I",
    "IRqXOER793Q<ZDDDT6B>U3Q53QE3EC7Q=ZL_LS4<X<Y=`1QU>R2h>QOR1Q;DQ<EQOR1QOR1Q;DQ<EQK<4<4<4<9QOR1S;EQOR1QO",
    "R1QOR1Q3=qQ4=3MC=qQ4MKEqLQ5QOQ4Q=C=qQ4KREW;=Q;5[K5T277BQ>Q99R>QAS7pNX2T<4Q44E7IqI3<4LQ4QD4<4<4<L=7Q1",
    "4Q43Eq<Q<9KQ53:pJ95Q6UeB^NcBU>TmBW>Xk4p1[O97IBQ=KN79Q<CChN3QGOF93R:6EY;=3Q=3A]OQI7SN3UGR9QG9QG9QG9QG",
    "9QG9QG9QG9QG>WJ[I7Sd35Q1A6V:R<Q:9Q7BGqQ1eqF:AG9fq9OQ9ZG9gqJNRAWOp1SOX2R>WBQN:SFX2R>YJSFR`1Qc_O`1U]S7",
    "`I[qARS7IT1RqqU7[:=J>R:9>VJE;aARD:Y9R7GS>B_:<R2M;R:7GJ>NBTMQ97Q3SMKMA3D93=3=:Q=4U9K94L4QM3M3Q53UMQ2",
    "Q62JQ>RApOS6;pET:RBR>QFT;QqI79E4RqW5QJAUMS2S1W7NK[MS:SA9R>QAQ=3RARqQ79Z=S:R9M3R5:BR>QAUGI=CpE3=CE;Q=",
    ";=37V1GARMQ2AM:RAQqAQqAQqR9QG9QG=ZC9Q4R47QEcLXMQJ>:BR>QARgXOS1UGQ1p7RRQ1RkqAjqYEQCS5Q3Q9=3Rq9S79Q797",
    "9q9q9jOX9RjGTA_OA]qZ1ROQ6SJT6SJ`1Q79QQGTJR>QLV<QEV;RIf7IQqAQqAQqAGXIRO9Vq9TG9q9SGASqXAnGS2[6S2^6T:>",
    "l>2QPAW7Ip7SN4VFQ1X1NR9U17R16Q9YEQ2Q9WqAXOQ1QO:Q6ZDZ1YLcqBR>QDXLQ5XKQ1YOR1pOS4RD<SD<QD<<=RC=SC=QC=;I",
    "pOS1R]GR9UqRAQOV1Qq9Zq9R7a9QqA79ZO9qI7AUGBQOUGBQGWGR2R6p1TG9qQ:Q7UAQ>Q1VqaA]OQ2qASNB[q=B>:Q>KO9G9W7F",
    "BQ64R6UIW9>9W9FX1QO9W5:Q2Q6T1]qRAUqBQOTGQ:QOTqUJQFd1b7]LpDS=pCQJQqY5JR2R>QBRqQCU<NQ29<U;QfBWF9Zq>:Iq",
    "T1G]NKW9Rq7R1UERDNVITEJZAU9QFU1UGR>C]=SBRJWD3E;7R>K[=RBQN2S9V7QJR>QFCY5S::R>Q1=;7R1XM2A7R>Cp5S;OQ6J>",
    "<Rq797Q2TNRITq9V=RJQF3E2_AQG979O9SG9RqQI[MRJQ:R>QFJ9QOAqAUq9QG9q9Q7>;=QBF:FBA7QF2Q9Q=:FQBNQ2RIRq97A7",
    "9Yq9=R2>2F2>J>Q3=37S>:W9]=T;OQ:R>Q63GWAp5TKq97R2R>QYA[MQBFR2UIQ5:XAp5T2I7RJR>YAZMS37QJR>QBTNW1VGFSB",
    "Q2RNQ1QGQ^9[5SBi<X1WMTFS1QOA7AQO9q9V5Q:>:FK=3=:S2R>aAQOAYMQBFQC79=2VI=R;Z5QC=JR62R1=RC[ESJI7TAb7QaI",
    "X7SJR>QAR79Y=QJ>QK7SJW6Q9WqFU:>S:b9QG9q9YEQ:N2>:>QC=2R2R>QAQq9q9X5Q2>:>Q37QJR>R]ATMJR>;=3S79XEQBNQ2",
    "S:RD2e97SJU6ZIWVqiBkFT9Q`Odc1h7SIX[OT63QESBRAoVGQ9TaGQe^9WET<R>]aAT^7QIWG:R>QAcG:R>QAWqFQ2RIp5QBR9O",
    "S2R>:QF9U7Q9TGSp1[7JR>QaDX1WMUFj9bGQ63=]BQNKS7`1q9=2RN:SAQ_mOR1YeqZ9RqRUiIO9QG9q9RXGSI7W9GA7SAOR1SRO",
    "bQ1jGQ9S7IR7QIRqN:QPd:R>TQF[:FUBTWFQ2NQ:R6QJFQBWFJQU6BnJTNS2TNk2V6QQLVAVqVAQC=TqVAVq4<<D4D<DL<R1K=3=",
    "QC=RGVAVq<<LDQL<QD=Vq<<L<Q4<4LQD=VqVAVqVAVqVAVqVAVqVAVqVAVKDV4=V3=QqV4=V3=QqV4=V3=QqV4=V3=QqV4=V3=Qq",
    "93Bp>TP6]BQ6p:R62SF2UFQ2>SBXd5R<<TKQEQ;Qe>QB>T2FQB>:>Q2Q9_qX>2l1[7NQCQGBR>Q17R`9WE2T9[5LR>SeAW5LR>",
    "QeAWE;9R>Si9QG9O9q9SG9Qa7BR<QBZ<XAXAQC7Q2R>VUJ^F:F:Nc2[6:SFQ`AO9VG9q97A79Rq9O9797QA7Q1797979G9q97A79",
    "79797979q97AO9QG9O9O979Rq9T7Q9G9Q79T7Ta2S6ehJR>XQAZ]gOX1QP^qQAQgqAQ]PqSAQjp7SITkqcXATWq[hAQVbGQ9QPgO",
    "U]jd6QkJ", NULL};

/* Category No, numbers that are no digits: first and last of each range. */
static const char *const tti_other_number_lines[] = {
    "UB16032RYF5[I5SI2T66VJ6B8]B9QQFCQSD9_10QdF04579V7qQ:0fGQKRqEcGMQ[:0QTE3T;9O72>Q19Q8>m[A5fVBQ<R23B1ZF",
    "JQ53QYE7J6Q88R<4G5U113q3Q=R18QE1O2R<4S97I7Q:6Z;5[1NTO9Q;3SA6T7C[LCQZ61]q8k8BjDDbl76hOFiQ:C=CS=HUZq8",
    "m2QJ2223R=Q<2>n3<", NULL};

/* Unicode 9.0.0: first code point of a range * 256 + canonical combining class. */
static const char *const tti_combining_lines[] = {
    "0VPW6UX2WDQP<W@X4QW>`Bo>`BRa5Q^KQP:RP:WFWFh:gFY4_6gFQP:X2WD`:X3X1_OX1_OWMSPJRTo6QPJRR^LX:oFX:gHWNX:",
    "Q_FQ`:_FX:_HX6X2Q4X1X1X1X1X1X1X1X1X1`1X1X1W:XGW9XHX1W7_6WFQ4XBW>bW6QiHX1X1W0pPKX1X1X1X1X1X1X1^4_F`:",
    "QWFX:_FQ4TQ3VMi_6Q`Jg6oFX:Jg6XJ^LX:_FQ4Xi4VLWg6WFX:_FX:_Fh:WF`:WFX:gFX:WFX:WFX:WFX:XJQXW6QgFX:JXg6hJ",
    "_6RPJ_6`J_6QPJZnLa4nW6SXJ^LX:_FX:_FX:gFaOX1X1^9gFX:_F`:QPJ_P7WITP9WGo6WFX:XJih7WITP9WGk`7WITP9WGk`7",
    "WITP9WGk`7WITP9WGoh9WGoh9WGQjDX7U5iX7WITP9WGoh9WGoP9WGk[7]2WGS[;lEkSFp:ScJl6cVLY4VnLQ4^LQ4^HQ8]l1X1",
    "SNp4SLQp2kNd2SN_6Y3WG_6XJ_fLQ4lP7WIX9_GdfLQ4Uco6`JW]P9WGWh9WGQWX9WGRg6JQbo4LQSnNX8WFQ4Qfo6WFQ4ah9WG",
    "UW6QhJfLQ4pW6QWFQ`:_FQ4m`7WISh9WGYg6WFX:Q`J]`9_G^`7WIRh9_G`h7WIQVW6`JX1^KQX:_FQP:JX1QgOQVLQ4Qg6Jo6XJ",
    "Qag6_FX:QgFX:`4W<X6W>XLYPJQ_6X3WCX:WFQ4UdW6XKg5hKo5XJQW6Jh1g5WFX:KfKQP:Jgog6`JQSX9WGhW6WhJTZfJX:X4WF",
    "X2Y0jX8_HW[eW6JQW6RXJXW6XJdW6XJRUP9WGQ_X9WGVo6TXJ^^La4YX9WGgh7WISP9WGQko6J_6_FQ4g6XJQ_6XJ_6J]P9WG",
    "Qm`9WGTnpPJW6VP_6QgFQh:XJWc^LQ4QhfLQ4QU_6QPJ]TfLQ4_6JZW6K^KQ4QP9WGQY_6WFQ4Zgh9WG^P9WG^X9WNWIa_6`JpP9",
    "_G_`7WIcP9WGRX7WIj`9WNWIQp`7X2WGdX7WITP9WGVW6Q`Jo6QPJQcX9WGh7WInh9WNWIQnh9WNWIo`9WGm`9WNWIlh9WGZTh9",
    "WGTmpP1QWO^o6Q`JURih1WOQYafHY9gOo2WFQQ8RVLQi4g6QWFY4Wg6hJQUW6`Jk^o6Q`J_6TPJg6Q`J_6XJ_6QPJaY^LQa4k_6",
    "QY1WI", NULL};

/* Canonical decompositions that NFC composes again: c = a b. */
static const char *const tti_composed_lines[] = {
    "V0R1h01R1h11R1h21R1h31R1h81R1h:2R3i71R5h01R5h11R5h21R5h81R9h01R9h11R9h21R9h82R>h31Rqh01Rqh11Rqh2",
    "1Rqh31Rqh83REh01REh11REh21REh81RIh13S1h01S1h11S1h21S1h31S1h81S1h:2S3i71S5h01S5h11S5h21S5h81S9h01S9h1",
    "1S9h21S9h82S>h31Sqh01Sqh11Sqh21Sqh31Sqh83SEh01SEh11SEh21SEh81SIh12SIh81R1h41S1h41R1h61S1h61R1i81S1i8",
    "1R3h11S3h11R3h21S3h21R3h71S3h71R3h<1S3h<1R4h<1S4h<3R5h41S5h41R5h61S5h61R5h71S5h71R5i81S5i81R5h<1S5h<",
    "1R7h21S7h21R7h61S7h61R7h71S7h71R7i71S7i71R8h21S8h23R9h31S9h31R9h41S9h41R9h61S9h61R9i81S9i81R9h74R:h2",
    "1S:h21R;i71S;i72R<h11S<h11R<i71S<i71R<h<1S<h<5R>h11S>h11R>i71S>i71R>h<1S>h<4Rqh41Sqh41Rqh61Sqh61Rqh;",
    "1Sqh;3RBh11SBh11RBi71SBi71RBh<1SBh<1RCh11SCh11RCh21SCh21RCi71SCi71RCh<1SCh<1RDi71SDi71RDh<1SDh<3REh3",
    "1SEh31REh41SEh41REh61SEh61REh:1SEh:1REh;1SEh;1REi81SEi81RGh21SGh21RIh21SIh21RIh81RJh11SJh11RJh71SJh7",
    "1RJh<1SJh<Q2RqhK1SqhK>REhK1SEhKMR1h<1S1h<1R9h<1S9h<1Rqh<1Sqh<1REh<1SEh<1VLh41WLh41VLh11WLh11VLh<",
    "1WLh<1VLh01WLh02V4h41W4h41a6h41a7h41V6h41W6h43R7h<1S7h<1R;h<1S;h<1Rqi81Sqi81_:h41_;h41]Gh<1dBh<1S:h<",
    "4R7h11S7h13R>h01S>h01V5h11W5h11V6h11W6h11VHh11WHh11R1hq1S1hq1R1hA1S1hA1R5hq1S5hq1R5hA1S5hA1R9hq1S9hq",
    "1R9hA1S9hA1Rqhq1Sqhq1RqhA1SqhA1RBhq1SBhq1RBhA1SBhA1REhq1SEhq1REhA1SEhA1RCi61SCi61RDi61SDi63R8h<1S8h<",
    "7R1h71S1h71R5i71S5i71VFh41WFh41VEh41WEh41Rqh71Sqh71a>h41aqh41RIh41SIh4ZBU8h11lAh12lEh11lGh11lIh1",
    "2lOh12m5h11m9h11n:h1JlIh81m5h81mAh11mEh11mGh11mIh11n;h1JmIh81n5h81mOh11n5h11n9h15nBh11nBh8Q<QPEh0",
    "1QPEh82QPCh14QP6h85QPJh11QPHh01QQ3h6;QPHh6Q0QQHh6GQQEh01QQEh82QQCh14QRFh85QQJh11QQHh01QR3h6HQSDhq",
    "1QSEhqR:QPFh61QQFh6>QP@h61QQ@h61QP@h81QQ@h83QPEh61QQEh63QVHh81QVIh81QPFh81QQFh81QPGh81QQGh83QPHh4",
    "1QQHh41QPHh81QQHh81QPNh81QQNh83QW8h81QW9h81QQ=h81QR=h81QQ3h41QR3h41QQ3h81QR3h81QQ3h;1QR3h;1QQ7h8",
    "1QR7h83QQ;h81QR;h8Y9Qa7QbC1Qa7QbD1Qb8QbD1Qa7QbE1Qb:QbDTJQfEQbD2Qf1QbDAQfBQbDbFRY8RYL8RY@RYL3RYCRYL",
    "TGR^7R]N1R^7R^G[LRj7RjF3Rj7RiN1Rj7RjGR8RlBRnGQFRn6RmN1Rn7RmN1Rn6RnGSLSR6SRFSHSUOSVE7SV6SVE1SV6SVF",
    "2SV6SV21SV:SVESOSZ6SYN1SZ7SYN1SZ6SZGT>S^IS^:2S^IS^q1S^LS^:1S^IS^Ob8TQ5TQ>Rg0Vh5ViE2Vh7ViE2Vh9ViE",
    "2Vh;ViE2Vh=ViE4VhAViEQ9ViJViE2ViLViE3ViNViE1ViOViE2Vj2ViEeMR1i51S1i51R2h71S2h71R2i31S2i31R2iA1S2iA",
    "1V7h11W7h11R4h71S4h71R4i31S4i31R4iA1S4iA1R4i71S4i71R4i=1S4i=1XBh01XCh01XBh11XCh11R5i=1S5i=1R5i@1S5i@",
    "1a8h61a9h61R6h71S6h71R7h41S7h41R8h71S8h71R8i31S8i31R8h81S8h81R8i71S8i71R8i>1S8i>1R9i@1S9i@1Vqh11Wqh1",
    "1R;h11S;h11R;i31S;i31R;iA1S;iA1R<i31S<i31WaFh41WaGh41R<iA1S<iA1R<i=1S<i=1R=h11S=h11R=h71S=h71R=i3",
    "1S=i31R>h71S>h71R>i31S>i31R>iA1S>iA1R>i=1S>i=1VEh11WEh11VEh81WEh81Z<h01Z=h01Z<h11Z=h11R@h11S@h11R@h7",
    "1S@h71RBh71SBh71RBi31SBi31WbJh41WbKh41RBiA1SBiA1RCh71SCh71RCi31SCi31ZJh71ZKh71[0h71[1h71Wc2h71Wc3h7",
    "1RDh71SDh71RDi31SDi31RDiA1SDiA1RDi=1SDi=1REi41SEi41REi@1SEi@1REi=1SEi=1[8h11[9h11[:h81[;h81RFh31SFh3",
    "1RFi31SFi31RGh01SGh01RGh11SGh11RGh81SGh81RGh71SGh71RGi31SGi31RHh71SHh71RHh81SHh81RIh71SIh71RJh21SJh2",
    "1RJi31SJi31RJiA1SJiA1S8iA1SDh81SGh:1SIh:2[Oh75R1i31S1i31R1h91S1h91V2h11W2h11V2h01W2h01V2h91W2h91V2h3",
    "1W2h31We0h21We1h21X2h11X3h11X2h01X3h01X2h91X3h91X2h31X3h31We0h61We1h61R5i31S5i31R5h91S5h91R5h31S5h3",
    "1V:h11W:h11V:h01W:h01V:h91W:h91V:h31W:h31WeHh21WeIh21R9h91S9h91R9i31S9i31Rqi31Sqi31Rqh91Sqh91VDh1",
    "1WDh11VDh01WDh01VDh91WDh91VDh31WDh31Wf<h21Wf=h21]0h11]1h11]0h01]1h01]0h91]1h91]0h31]1h31]0i31]1i3",
    "1REi31SEi31REh91SEh91]qh11]@h11]qh01]@h01]qh91]@h91]qh31]@h31]qi31]@i31RIh01SIh01RIi31SIi31RIh91SIh9",
    "1RIh31SIh37mAhC1mAhD1Wh0h01Wh1h01Wh0h11Wh1h11Wh0j21Wh1j21lAhC1lAhD1Wh8h01Wh9h01Wh8h11Wh9h11Wh8j2",
    "1Wh9j21mEhC1mEhD1Wh@h01WhAh01Wh@h11WhAh13lEhC1lEhD1WhHh01WhIh01WhHh11WhIh13mGhC1mGhD1Wi0h01Wi1h0",
    "1Wi0h11Wi1h11Wi0j21Wi1j21lGhC1lGhD1Wi8h01Wi9h01Wi8h11Wi9h11Wi8j21Wi9j21mIhC1mIhD1Wi@h01WiAh01Wi@h1",
    "1WiAh11Wi@j21WiAj21lIhC1lIhD1WiHh01WiIh01WiHh11WiIh11WiHj21WiIj21mOhC1mOhD1Wj0h01Wj1h01Wj0h11Wj1h1",
    "3lOhC1lOhD1Wj8h01Wj9h01Wj8h11Wj9h13n5hC1n5hD1Wj@h01WjAh01Wj@h11WjAh11Wj@j21WjAj22m5hD2WjIh02WjIh1",
    "2WjIj21n9hC1n9hD1Wk0h01Wk1h01Wk0h11Wk1h11Wk0j21Wk1j21m9hC1m9hD1Wk8h01Wk9h01Wk8h11Wk9h11Wk8j21Wk9j2",
    "1mAh02mEh02mGh02mIh02mOh02n5h02n9h04Wh0j51Wh1j51Wh2j51Wh3j51Wh4j51Wh5j51Wh6j51Wh7j51Wh8j51Wh9j5",
    "1Wh:j51Wh;j51Wh<j51Wh=j51Wh>j51Whqj51Wi0j51Wi1j51Wi2j51Wi3j51Wi4j51Wi5j51Wi6j51Wi7j51Wi8j51Wi9j5",
    "1Wi:j51Wi;j51Wi<j51Wi=j51Wi>j51Wiqj51Wk0j51Wk1j51Wk2j51Wk3j51Wk4j51Wk5j51Wk6j51Wk7j51Wk8j51Wk9j5",
    "1Wk:j51Wk;j51Wk<j51Wk=j51Wk>j51Wkqj51mAh61mAh41Wk@j51mAj51m<j52mAj21WmFj51lAh61lAh41lAh02lAj55U8j2",
    "1WkDj51mGj51m>j52mGj21Wn6j51lEh02lGh02lGj51WmOh01WmOh11WmOj21mIh61mIh41n:h04mIj21n:j21lIh61lIh41lIh0",
    "3WoNh01WoNh11WoNj21n5h61n5h41n;h02n1hC1n1hD1n5j21n;j21m5h61m5h41m5h02m1hD1U8h05WkLj51n9j51n>j52n9j2",
    "1WoFj51lOh02m9h02m9j5pNXp@iH1XpBiHCXpDiHOX^@iH1X^DiH1X^BiHQEX`3iH5X`8iH3X`;iHHXa3iH2Xa5iHKXaLiH",
    "3Xb3iH3Xb5iH2Xb8iHGQMiH2Xc1iH;Xb=iH1QLiH1QNiH1Xc4iH1Xc5iH3XcBiH1XcCiH3XcFiH1XcGiH7XcJiH1XcKiH3Xd2iH",
    "1Xd3iH3Xd6iH1Xd7iHQ3Xe2iH1Xe8iH1Xe9iH1Xe;iHQAXcLiH1XcMiH1XdAiH1XdBiH7XeBiH1XeCiH1XeDiH1XeEiH",
    "SZOpR;pTI2pR=pTI2pRqpTI2pRApTI2pRCpTI2pREpTI2pRGpTI2pRIpTI2pRKpTI2pRMpTI2pROpTI2pS1pTI3pS4pTI2pS6pTI",
    "2pS8pTI7pSqpTI1pSqpTJ2pSBpTI1pSBpTJ2pSEpTI1pSEpTJ2pSHpTI1pSHpTJ2pSKpTI1pSKpTJGpR6pTI:pTMpTI>pU;pTI",
    "2pU=pTI2pUqpTI2pUApTI2pUCpTI2pUEpTI2pUGpTI2pUIpTI2pUKpTI2pUMpTI2pUOpTI2pV1pTI3pV4pTI2pV6pTI2pV8pTI",
    "7pVqpTI1pVqpTJ2pVBpTI1pVBpTJ2pVEpTI1pVEpTJ2pVHpTI1pVHpTJ2pVKpTI1pVKpTJGpU6pTI3pWqpTI1pW@pTI1pWApTI",
    "1pWBpTI4pWMpTIQglLRTTIRTUJ2RTTKRTUJqRTU5RTUJT3RTYARTY71RTYBRTY7`LRTj7RTiN1RTj7RTjG[qRUUIRUUJ",
    "1RUUIRUU@2RUUIRUUMWLRU]HRU]q1RU]IRU]q", NULL};

/* Those that it does not: c = a b, or c = a where b is 0. */
static const char *const tti_one_way_lines[] = {
    "j0h001h102hC01h8h1Q@eI0:QK09UG0Q^ARXERYL1RXFRYL1RXGRYL1RXLRYL1RY1RYL1RY2RYL1RY;RYL1RYqRYLSMR]1R]L",
    "1R]2R]L2R]qR]LRDRaBRaL3RaHRaLQ3R`FRaL1R`GRaL1R`LRaL3Ra;RaLWNRi1RiL1Ri2RiLo6Sj2SmG:Sj<SmG5SjASmG",
    "5SjFSmG5SjKSmG=Sj0SmE:SkASkB2SkASkD1SmBSl02SmCSl09SkASl0BSlBSmG:SlLSmG5Sm1SmG5Sm6SmG5Sm;SmG=Sl@SmE",
    "SmHm<02m=02m>02mq02n<02n=02n>0QNl603mI0;l802l908l@08l:08m@08l>03l501S00:l<02lq02UD03XP201XP30Y5m90",
    "4R;01V50_NpP801pP90QmBZfMiHQca4QSR801igD01QSf:01QSV801kfA01caB01do501QWlL01QWlL01fZA01QT^A01ep70",
    "1fZ801h_F01mc901ol501QQaO01QQmJ01QRWH01QTTq01j`201kXK01lVI01lnN01QQQM01QT[:01QV_A01cd201dkE01jh40",
    "1l`K01QQa=01QW`N01gZ@01ko;01QQ^=01QR[401hf901QP^H01QRPO01gf:01ihG01k[:01lgL01QTV>01cl601d]G01dfN0",
    "1iV401jfC01l`@01mg701QPP101QQ`601QQbL01QS_q01QUiB01QVkq01QW_J01nT<01n[O01o]001QPn901QTh401QWcO0",
    "1QRfF01fVO01gh401oS001QPSN01lc201nV:01QSV201QUgG01fVH01gS201j`C01k^J01khq01oYq01oaG01QUb;01dfB0",
    "1QPT;01d^L01d^<01n`L01o]N01QPoA01QUcE01QRl001hfq01j`201QRgN01caI01fo701hPB01ll701m[@01dhG01nWK01cmO0",
    "1gm901c`=01kV<01i[H01oY201dn301fRN01mh101QQR901QRe:01jmJ01QSm@01kT801hgN01QPg501hm001m[501ce>01d[90",
    "1d^901jT101oW701QPcq01QRfB01QT^q01dgE01eR201f[C01gg<01i^501koN01nY:01QU]=01QVc:01QWdG01QWf>01ddK0",
    "1if601jkG01QSk201gcD01hp@01h`001iTJ01ki301lZ901mT901n^:01o_D01QPSq01QSi601QQW>01QTQ301QTj:01d`G0",
    "1de301eUM01lV801QRV201QRe:01gf901goE01hkK01jm>01oQN01lkE01cg401egI01fo701g]J01hPL01lmB01mS901olJ0",
    "1QPR601QTaD01QUgF01QUj801QVPH01cl;01n]>01QT]D01QUeH01hW101cd601dVJ01fo>01gQO01ipI01j`201l^>01mb20",
    "1QQWL01QTSL01QWl=01id801QUa>01dd901ikK01ioC01kZ101kdL01mP901mZI01nS;01oX@01QVRN01d[=01ha>01QUcH0",
    "1dQ;01gXI01k_:01QSi:01gl;01hZ401jPG01ll701QUd601da901ePq01gS501i`C01ij>01jU801kW501mP601m_201okI0",
    "1QRVq01QRW101QT^<01QUg201diO01keJ01ePM01l^@01mTH01QQ_J01QUe301QWRG01QWdO01ilG01k^;01QP_801nf;01ni00",
    "1oTB01lf001lTI01QRjH01cf001QPiF01daJ01d`701ge601hfC01oVF01fl501kXN01ieD01QSiK01QRR<01QUb=01QRp;0",
    "1gfC01dZ001e^003fRJ02icD03d^N01li:01mf:01nYL01nZN01n[501npq01QUjF01oUN01omM02QQ`B02QRgH03QTQH01QTWM0",
    "4QVWq01QVWL01QVY801QW]D01QTVN01QUeG01cm>01dW701dZ=01df901dg401djA01epM01e`601ec801fR001fU801gS40",
    "1gS>01hTD01h[801hp>01h_B01iZq01i_201idA01jT501k[G01k`J01ki201l[>01la;01mQ201nTA01nYN01nZ901nZ801nZ@0",
    "1nZF01nZM01np=01np>01nb001nd101nn001o_D01o`901ob101okB01QPP501QP_=01QPcI01QPcI01QQRG01QRX@01QRpF0",
    "1QRh101QRiI01QSVC01QSX801QSmF01QTQH01QUg301QUoO01QVQK01hSE01T`g>01QP`H03ca601d]E01d[801cl001dZ50",
    "1dp001df701dgJ01epM01eZE01epI01e_201fRJ01fUC01fZ401fZD01fc201fi801gfB01gfI01gk901gm=01hVH01hZ>01hX80",
    "1hp>01h[001h_B01haD01hn401iPL01iRB01iZF01icD01ihG01ihK01ijF01jkI01jmJ01kZ101kfK01kf;01ki201lPN01l[>0",
    "1mm701laE01leq01li:01mSA01mX601mYK01m`M01m`O01mf:01mfK01mgD01mj:01mj001nV<01neA01nn001oSK01oZK01o_D0",
    "1oiN01QPP501QPjB01QPoq01QQkI01QRZ101QRp601QRpF01QReO01QRgH01QRf;01QRh101QRgN01QRg=01QRiI01QRl:0",
    "1QSX801QSiH01QTSB01QTpI01QTcF01QUcL01QUg301QUjF01QUnK01QUoO01QVP;01QVQK01QVhB01QWlL01TZR:01TZR40",
    "1TpnE01^lM01`PH01`QI01Tdb901TgV@01TofC01QWj301QWl>0R4Q^IQ]D2Q_BQ]G;Q_9Q^11Q_9Q^21Qnj9Q^11Qnj9Q^2",
    "1Q^@Q]G1Q^@Q]H1Q^@Q]L1Q^AQ]L1Q^BQ]L1Q^CQ]L1Q^DQ]L1Q^EQ]L1Q^FQ]L2Q^HQ]L1Q^IQ]L1Q^JQ]L1Q^KQ]L1Q^LQ]L",
    "2Q^NQ]L2Q_0Q]L1Q_1Q]L2Q_3Q]L1Q_4Q]L2Q_6Q]L1Q_7Q]L1Q_8Q]L1Q_9Q]L1Q_:Q]L1Q^EQ]I1Q^AQ]O1Q^KQ]O1Q_4Q]O",
    "Qe`@SdZGSd[51SdZHSd[51SdZOSd[>1SdZOSd[q1SdZOSd[@1SdZOSd[A1SdZOSd[BRGSd]ISd[51Sd]JSd[51Sd]KSd[>",
    "1Sd]LSd[>1Sd]KSd[q1Sd]LSd[qRYb0caM01caH01cb101TPY201ck001cm>01cmK01dP201dSJ01dTI01dW701dVq01]TN0",
    "1TQaJ01dZ=01dZD01d[401d[G01TQXL01]UI01d[701dp=01TQZ;01dpG01d]401cf<01d]<01d]E01UT^O01d_E01d`301]VO0",
    "1daK01db601dcB01dcG01]XE01df701df901dg401dgJ01dh501dh601dhG01dj901djA01djJ01dkC01dkM01dkO01dkO01dkO0",
    "1TRa<01lS@01dn:01dnO01TRk301do;01doA01eP601eTN01eQH01eR801eS801eU201eWF01eX@01eZC01e[301ep401ep40",
    "1epI01e];01e]C01e^201ehF01e`601ehG01ebA01ecD01d`701fW>01en>01eoD01fP=01el;01fQB01fQA01fU<01TUW40",
    "1fWB01fWG01fX601fXJ01fY201f[201TUe801TUg:01f_<01f`K01fa701f^H01fc601]g>01]gL01fh801fiN01fiN01TV^80",
    "1fn301fnH01fo701foC01TVhH01foO01gP601gjC01gQ201]l101gS001gS>01gV001gT=01TW_401gZ301TW_601g[>01g[;0",
    "1g[L01g_101g_201^Qq01g_M01ga801gaM01gc901^S201TXp301^SL01ge@01geC01geF01gf:01UXlB01ggN01TXiA01TXiA0",
    "1QP`101gi201gi201^V701TpeH01Th^J01gk201gk;01^W301glJ01gn=01gnG01goI01hT101^YJ01^XL01hTD01TYfD01hV70",
    "1hZ801hZ<01hZ>01hZ<01h[J01hp>01h]B01h]401h]q01h^N01h_B01h_F01h`@01h`K01hbM01heA01hfD01hj@01TZh<0",
    "1hiM01hgL01hk801hl301ho401TZoA01iQ201hn501hm901^a>01iS901iSN01iTM01iSG01^c<01iZq01i[<01TpP:01i_30",
    "1igH01ib901^hI01idA01^h801^g401dpB01dpE01ih001idL01QPU=01`nI01ihG01ihK01ii101ijN01ijC01Tpn301^j90",
    "1ioJ01il501jRB01jT501T]S=01jT>01jPO01jXD01^lM01jZ201j]301j_:01je801T]e301jfK01_PH01ji101T^U701jjD0",
    "1_R>01jkB01jlO01jmJ01jmK01T^d=01TWX;01T^gJ01kR>01T_UL01kUO01kV=01kS701kXF01kYN01k[G01kZ101k[901k[H0",
    "1kp501T_XN01kYD01kaq01kc>01_YC01kf;01kf701T_fA01k_I01kk>01T_jN01T_l>01kn601lQI01lPN01lPK01_pF01lR:0",
    "1lSM01lSG01lU=01TQY501lZ501T`c301lpL01T`m;01la801laE01lb@01Ta`801ld001ldE01TaiE01TbPD01lkJ01ll;0",
    "1_e<01lm501_eH01_eH01mR701mRL01mSA01mT501mV:01_hK01mY401TcQF01mYN01TcTB01m[@01TXpO01m`@01Tcm101TcmH0",
    "1TdR401_oL01`P801mgD01TdWC01TdWB01TdXI01TdYC01mhN01mhO01mhO01mj:01`QI01ml;01`R601`TF01TePM01nR>0",
    "1nT<01nV<01`W301Tea601nZF01TedJ01Tef501npq01n_;01`Yq01nb001nb:01nbq01Tf[L01Tfe701Tfe701ng>01``20",
    "1Tfm;01nn601nn901`a701TgT001oVB01`e001oW801oW301oX001Tgl601o[301`h101o^701o`201ob501`iD01Tha801Thb70",
    "1`jI01ThfI01okJ01ThiN01olE01ooJ01QPP501TiVJ01TiY301QPS001Ti]801QPS@01TpjO01`nE01QPUB01QPX301aP;0",
    "1QPYN01feE01Tim701TimE01TplC01TplL01QP`101QP`401QSlN01aS;01QPdA01QPd;01QPdM01deC01QPeA01QPeC01QPeM0",
    "1QPg601TjiL01QPg501QPhM01QPk301QPm=01QPi301QPmM01QPo701QQRG01QPjC01QPn:01QPn<01QPnL01TkQF01Tk[;0",
    "1TkVE01aY;01QQWA01QQWC01QQXF01Tln:01QQ[401Tki<01aZM01a[101TkmA01TlVB01a[;01QQb@01QQbL01QQc701QQc90",
    "1QQe901QQd801QQh>01QQg201QQkI01QQi801QQk;01QQl601a^G01QQo101QRP101a_I01QRS001QRS301Tmc701QRVG01QRVN0",
    "1aaE01QRWJ01]UK01TnU>01Tn[601aeN01af701QRe001QRg=01QRl:01QSRE01ToU801QSU;01QSV101QSXK01QS[G01Toiq0",
    "1TRP401QS^;01QS]L01QS_@01TRVN01QSfD01QSiH01UQ^B01UQ_=01QTTD01QTWA01QTXA01UQi>01QTXK01QTaH01QTfG0",
    "1QTfH01QTcL01QToI01QUPE01URoJ01QUp;01bpE01QU]G01US[G01b_601QUf301g]B01QUi301UTZ501UT`J01bc>01bcF0",
    "1QUo001UUP:01beB01UUTF01QVP;01QVP;01QVQ901UU]F01QVW201biC01QVY901QV]701QV^201QV_N01bn>01UVi@01QVhB0",
    "1QWR001QWWM01cV>01cW=01QW[701UXV>01cWH01UXX501UX`>01UXdA01QWeK01cZF01QWgI01QWgN01QWh501QWhq01QWhF0",
    "1QWiK01UY`00", NULL};

/* The lines of a table, NULL behind them. */
static const char *const *tti_unicode_lines(int table) {
    static const char *const *const tables[TTI_N_TABLES] = {
        tti_class_lines, tti_other_number_lines, tti_combining_lines, tti_composed_lines, tti_one_way_lines};
    return tables[table];
}
#endif /* TTI_UNICODE_TABLES */

/*
 * MIT License
 *
 * Copyright (c) 2026 The thinktuning.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
