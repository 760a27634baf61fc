/* thinktuning.h - v0.1.0 - language models that learn to reason, in one C header
 *
 * A transformer, reverse-mode autograd, a BPE tokenizer, a sampler, GRPO, and ThinkTuning (RRV et al., EMNLP
 * 2025, arXiv 2508.07616): a teacher of the student's own size reads some of its answers and continues them
 * with feedback; reinforcement learning on these guided rollouts teaches the student to check and correct
 * itself. C99 that also compiles as C++11. Needs the C library; CUDA is optional.
 * Licence: MIT, text at the end of the file.
 *
 * ---- use ----
 * In ONE source file
 *
 *     #define THINKTUNING_IMPLEMENTATION
 *     #include "thinktuning.h"        (before other headers, so that POSIX calls are visible under -std=c99)
 *
 * and in all others just the #include. Best it is a file of its own, tt.c, with these two lines and nothing else: it takes
 * half a minute at -O2, once, and an edit of the rest less than a second:
 *
 *     cc -O2 -c tt.c                  (once)
 *     cc -O2 app.c tt.o -lm           (after each edit; threads included, on POSIX)
 *
 * In a shared library all else can be hidden: with the same TT_API before the #include in every file,
 *
 *     #define TT_API __attribute__((visibility("default")))        (Windows: __declspec(dllexport))
 *     cc -O2 -fPIC -fvisibility=hidden -shared tt.c -o libtt.so -lm
 *
 * exports the tt_ functions and nothing else; without TT_API, -fvisibility=hidden leaves none. The
 * fast kernels (AVX2, AVX-512 and its BF16, NEON) are compiled in by function attributes and chosen at run time: no
 * -march needed.
 *
 * ---- a complete program: train, save, load, sample ----
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
 *         int step;
 *         config.vocab_size = 16; config.hidden_size = 32; config.num_hidden_layers = 2; config.num_attention_heads = 4;
 *         model = tt_model_create(ctx, &config, 1);
 *         adamw = tt_adamw_create(model, NULL);
 *         text.n_sequences = 1; text.tokens = tokens; text.offsets = ends;
 *         for (step = 0; step < 60; step++) {
 *             tt_tensor *logprobs = tt_model_logprobs(model, tt_batch_create(ctx, &text), 1, NULL);
 *             tt_backward(ctx, tt_neg(ctx, tt_mean(ctx, logprobs)));
 *             if (tt_optimizer_step(adamw, 1e-2f, NULL) != TT_OK) { puts(tt_error(ctx)); return 1; }
 *             tt_step_reset(ctx);
 *         }
 *         prompt.prompt = tokens; prompt.prompt_length = 2; greedy.greedy = 1; greedy.max_new_tokens = 12;
 *         if (tt_generate(model, &prompt, 1, &greedy, &out) != TT_OK) { puts(tt_error(ctx)); return 1; }
 *         for (step = 0; step < out.items[0].length; step++) { printf("%d ", (int)out.items[0].tokens[step]); }
 *         tt_completions_free(&out); tt_optimizer_destroy(adamw); tt_model_destroy(model); tt_destroy(ctx);
 *         return 0;
 *     }
 *
 * ---- the rules ----
 * Defaults  A zero in any _desc or _config field means the default that stands beside it.
 * Errors    Functions return tt_status or NULL; tt_error(ctx) says what, where and which value. An error while a
 *           graph is being built sticks until tt_step_reset: later ops return NULL quietly, and tt_backward,
 *           tt_eval and tt_optimizer_step report the first cause, so model code needs no check on each line.
 *           What tt_error says can still be read after tt_step_reset, and goes when the next step succeeds.
 *           Nothing here prints, exits or aborts, or changes signals and locale.
 * Memory    All memory comes through the allocator in tt_desc. What _create returns, _destroy frees: in any order, the
 *           context last. Tensors that ops return live until tt_step_reset. A failed allocation is an error like any
 *           other, and leaks nothing.
 * Threads   A context is used by one thread at a time; any number of contexts may run at once. Inside, a context has
 *           a team of n_threads POSIX threads; on other systems OpenMP's, where the compiler has it on.
 * Bits      A result does not depend on thread count, on what else is in a batch, on a sequence's slot, or on how
 *           a prompt was split between prefill and decoding. Log-probs of sampling equal those of training bit
 *           for bit, and a resumed run equals the one that was never interrupted. (Between kernel sets, see
 *           tt_kernel, results are close but not equal.)
 *
 * ---- macros ----
 * THINKTUNING_IMPLEMENTATION   compile the implementation here
 * TT_STATIC                    every function static: several independent copies in one program
 * TT_API                       your own linkage: what a shared library exports, see use
 * TT_NO_THREADS                everything on the calling thread
 * TT_OPENMP                    OpenMP's threads instead of a team of our own, for hosts that run on them already
 * TT_HEADER_NAME               how the header includes itself for each kernel set, if you renamed the file;
 *                              default "thinktuning.h"
 * TT_ALLOW_FAST_MATH           accept -ffast-math, and lose the promise about bits
 * TT_MAX_FILE_BYTES            the largest file that is read whole; default 16 GiB (weights are mapped, and have no limit)
 * TT_CUDA                      the program links tt_cuda.cu: where desc.backend is NULL, the environment's TT_BACKEND
 *                              chooses, "cpu" or "cuda"; default "cpu"
 *
 * ---- chapters, here and in the implementation ----
 *  1 base        status, errors, allocation, text, numbers, files, JSON, threads, random numbers
 *  2 kernels     the table of a backend; CPU kernels: matrix product, attention, norms, ...
 *  3 tensor      shape and storage
 *  4 autograd    tape, ops with forward and backward side by side, custom ops, recomputation
 *  5 tokenizer   BPE: train, encode, decode, tokenizer.json, .tiktoken, chat templates
 *  6 model       config, parameters, forward, low-rank adapters
 *  7 checkpoint  safetensors, Hugging Face directories, training state
 *  8 sampler     KV cache, continuous batching, sampling controls
 *  9 optimizer   AdamW, clipping, schedules
 * 10 grpo        rollouts, advantages, policy losses
 * 11 think       teachers, selection, augmentation, advantage-aware shaping, schedule
 * 12 trainer     tasks, rewards, the training step over one or more processes, evaluation, metrics */
#ifndef TTI_SIMD_PASS
#ifndef THINKTUNING_H
#define THINKTUNING_H

/* The implementing file may include this header before any other; then POSIX calls (fsync, monotonic
 * clock) and Linux's large pages are visible even under -std=c99. */
#if defined(THINKTUNING_IMPLEMENTATION) && !defined(_WIN32) && !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
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

/* ==== 1. base ============================================================================== */

#define TT_VERSION "0.1.0"

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

/* Where all memory comes from. alloc returns memory aligned for any type, as malloc does. free receives the size that
 * alloc was given. Both NULL = malloc/free. */
typedef struct tt_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*free)(void *user, void *memory, size_t bytes);
    void *user;
} tt_allocator;

typedef void (*tt_log_fn)(void *user, tt_status status, const char *text);

typedef struct tt_desc {
    int n_threads;              /* up to 1024; 0 = OMP_NUM_THREADS if set, else one per processor; where the program
                                   is linked without threads it is one, see tt_threads            */
    const char *kernel;         /* CPU kernels: "portable", "avx2", "avx512", "neon"; NULL = the
                                   environment's TT_KERNEL, else the best that this CPU runs      */
    const char *matmul;         /* CPU: "f32", or "bf16": the factors of weight products are rounded to bf16, the
                                   sums are float32 (mixed precision; weights, gradients and all else stay float32),
                                   by AVX512-BF16 where it pays ("dot-bf16" forces it);
                                   NULL = the environment's TT_MATMUL, else "f32"                 */
    const tt_backend *backend;  /* NULL = CPU (but see TT_CUDA above)                             */
    tt_allocator allocator;
    tt_log_fn log;              /* receives every error text once; NULL = none                    */
    void *log_user;
} tt_desc;

/* One context owns backend, threads, scratch memory and error text. Contexts are independent: one per
 * thread, any number of them. desc may be NULL. NULL only if memory is out; a bad field gives a context
 * whose every call fails with the reason in tt_error(). */
TT_API tt_context *tt_create(const tt_desc *desc);
TT_API void        tt_destroy(tt_context *ctx);

/* The last sentence of trouble, never NULL, "" if none. An error in graph building is the first cause and sticks until
 * tt_step_reset or tt_error_clear: later ops return NULL quietly. Any other error is replaced by the next one. The sentence
 * can be read until then, also after tt_step_reset, and is gone once the trouble is mended: when a step's work succeeds
 * (tt_backward, tt_eval, tt_optimizer_step, tt_generate, and so tt_trainer_step), or the call that failed succeeds when it is
 * made again (those that read, write, load, save or parse something, or make a model or tokenizer). Other successes leave it,
 * so that several things may be made before one look. ctx may be NULL ("out of memory"; tt_error_clear does nothing). */
TT_API const char *tt_error(const tt_context *ctx);
TT_API tt_status   tt_error_status(const tt_context *ctx);
TT_API void        tt_error_clear(tt_context *ctx);
TT_API const char *tt_status_name(tt_status status);
/* For backends, custom ops and callbacks: sets the error text (printf form) and returns status. */
TT_API tt_status   tt_fail(tt_context *ctx, tt_status status, const char *format, ...);

/* Memory from the context's allocator. tt_alloc returns zeroed bytes, or NULL with the error set. */
TT_API void *tt_alloc(tt_context *ctx, size_t count, size_t size);
TT_API void  tt_free(tt_context *ctx, void *memory, size_t count, size_t size);
typedef struct tt_memory { size_t current_bytes, peak_bytes; } tt_memory;
TT_API tt_memory tt_memory_get(const tt_context *ctx);

TT_API double      tt_clock(void);                        /* seconds, monotonic where the system has it */
TT_API int         tt_threads(const tt_context *ctx);     /* threads in use                             */
TT_API const char *tt_kernel(const tt_context *ctx);      /* name of the CPU kernels in use, and of those of bf16 products */

/* Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011). A draw is a pure function of
 * (seed, stream, index); tt_rng walks the index. Every seed is valid, also 0. */
typedef struct tt_rng { uint64_t seed, stream, index; } tt_rng;
TT_API uint64_t tt_random(uint64_t seed, uint64_t stream, uint64_t index);
TT_API uint64_t tt_rng_next(tt_rng *rng);
TT_API double   tt_rng_uniform(tt_rng *rng);              /* [0, 1)                                     */
TT_API double   tt_rng_normal(tt_rng *rng);               /* mean 0, variance 1; uses two draws         */
TT_API int      tt_rng_below(tt_rng *rng, int n);         /* 0 .. n-1, n >= 1                           */
TT_API uint64_t tt_hash(const void *bytes, size_t size, uint64_t seed);

/* Growable bytes and token ids. Start from {ctx} with all else 0; data is NUL-terminated (text) and
 * owned by the struct until tt_text_free. After a failed append the content is unchanged. */
typedef struct tt_text { tt_context *ctx; char *data; size_t size, capacity; } tt_text;
typedef struct tt_ids  { tt_context *ctx; int32_t *data; size_t size, capacity; } tt_ids;
TT_API tt_status tt_text_append(tt_text *text, const char *bytes, size_t size);
/* Appends, printf form. Numbers have a point whatever the locale. %r is a double in the fewest digits that read back as the
 * same, %R a float; null, as JSON wants it, where it is not finite. No %a, %n, wide characters or long double. */
TT_API tt_status tt_text_format(tt_text *text, const char *format, ...);
TT_API tt_status tt_text_vformat(tt_text *text, const char *format, va_list list);
TT_API tt_status tt_text_json(tt_text *text, const char *bytes, size_t size);  /* appends "quoted\n"   */
TT_API void      tt_text_free(tt_text *text);
TT_API tt_status tt_ids_append(tt_ids *ids, const int32_t *values, size_t n);
TT_API void      tt_ids_free(tt_ids *ids);

/* Reads a decimal number, as -1.5e3, at the begin of text: the nearest double, whatever the locale. Returns how many bytes
 * it took, 0 if there is none; no space before it, no hexadecimal, infinity or NaN. */
TT_API size_t    tt_number_read(const char *text, size_t size, double *out);

/* Whole files. What is read must be a regular file, for a pipe or a device might never end, of at most TT_MAX_FILE_BYTES.
 * Writing is atomic: a new file beside it (tt-....tmp), fsync, rename; on failure the old file stands and the new one is
 * removed. It keeps the permissions of the file that it replaces. Anything else at path is refused: a device, a pipe, a
 * folder, a symbolic link. A limit on the size of files (ulimit -f) is an error too, if the program ignores SIGXFSZ, as those
 * of examples/ do; else the system ends the program. The library leaves signals alone. */
#ifndef TT_MAX_FILE_BYTES
#define TT_MAX_FILE_BYTES ((uint64_t)16 << 30)
#endif
TT_API tt_status tt_file_read(tt_context *ctx, const char *path, tt_text *out);   /* appends to out */
TT_API tt_status tt_file_write(tt_context *ctx, const char *path, const void *bytes, size_t size);
TT_API tt_status tt_file_writable(tt_context *ctx, const char *path);             /* could it be written now? To ask before long work */
TT_API tt_status tt_file_readable(tt_context *ctx, const char *path);             /* does a regular file stand there that can be read? */
TT_API int       tt_file_exists(const char *path);                                /* 1 if anything stands there                       */
TT_API tt_status tt_make_dirs(tt_context *ctx, const char *path);                 /* like mkdir -p  */
/* Appends all of an open stream, a FILE * such as stdin; name is for the error text. The same limit. */
TT_API tt_status tt_stream_read(tt_context *ctx, void *file, const char *name, tt_text *out);

/* JSON, RFC 8259. A parsed document is one block of memory; nodes live as long as their root.
 * Strings are decoded UTF-8 (NUL-terminated, length beside it); \u escapes of lone surrogates become
 * U+FFFD; depth is limited to 128, the number of values to 2^23. Duplicate keys: the last wins in tt_json_get. */
typedef enum tt_json_type { TT_JSON_NULL, TT_JSON_BOOL, TT_JSON_NUMBER, TT_JSON_STRING, TT_JSON_ARRAY, TT_JSON_OBJECT } tt_json_type;
typedef struct tt_json {
    tt_json_type type;
    double number;              /* also 0/1 of a bool                                    */
    const char *string;         /* text of a string; the characters of a number          */
    size_t length;              /* bytes of string, elements of an array or object       */
    const char *key;            /* name if this is a member of an object, else NULL      */
    size_t key_length;
    const struct tt_json *child, *next;   /* first element, next sibling                 */
} tt_json;
TT_API tt_json       *tt_json_parse(tt_context *ctx, const char *text, size_t size);  /* error names line and column */
TT_API void           tt_json_free(tt_context *ctx, tt_json *root);
TT_API const tt_json *tt_json_get(const tt_json *object, const char *key);            /* NULL if absent or object is no object */
TT_API const char    *tt_json_text(const tt_json *object, const char *key, const char *fallback);
TT_API double         tt_json_number(const tt_json *object, const char *key, double fallback);
TT_API int            tt_json_int(const tt_json *object, const char *key, int fallback);   /* fallback also for all but whole numbers in 0..2147483647 */

/* JSON lines: one value a line. Lines of blanks are passed over, and so is a byte order mark. A text with the character
 * U+0000 is an error, for it would end there as a C string, and so is a line that is no UTF-8. Errors name the file and the
 * line. Start from {ctx} with all else 0. */
typedef struct tt_json_lines {
    tt_context *ctx;
    tt_text text;               /* the whole file; to read from elsewhere, fill it and name in place of tt_json_lines_open */
    const char *name;           /* of the file, for errors; must live as long */
    size_t at;
    int line;                   /* of the last value, from 1                                */
} tt_json_lines;
TT_API tt_status tt_json_lines_open(tt_json_lines *, const char *path);
TT_API tt_status tt_json_lines_next(tt_json_lines *, tt_json **value);            /* yours to free; NULL at the end */
/* A text of the last value, which must be an object: NULL if it has no such member. With numbers = 1 a number is a
 * text too, as it is written. Anything else is an error that says what stands there. */
TT_API tt_status tt_json_lines_text(const tt_json_lines *, const tt_json *value, const char *key, int numbers,
                                    const char **text);
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
    const void *panels;                 /* what gemm_panels made of this B, beside it, or NULL     */
    float *c;
    tt_unary activation;                /* 0 = none; not TT_CLAMP or TT_SCALE                      */
    float *y;                           /* strides of c; may be c                                  */
} tt_gemm_args;

/* Sequence s has query rows offsets[s] .. offsets[s+1]-1; its first query stands at position
 * query_start[s] (NULL = 0); its key of position j is row key_start[s] + j of k and v
 * (NULL = offsets[s]). Query at position p sees keys 0..p. key_tiles: k is a cache that store_keys filled. */
typedef struct tt_attention_args {
    int n_sequences, n_tokens, n_heads, n_kv_heads, head_dim;
    float scale;
    int key_tiles;
    const int32_t *offsets, *query_start, *key_start;
    const int32_t *host_offsets;
    const float *q, *k, *v;       /* [n_tokens, n_heads*head_dim], [rows, n_kv_heads*head_dim] */
    float *out, *lse;             /* lse [n_tokens, n_heads]: log sum exp of a row's scores, for backward;
                                     NULL in decode                                            */
    const float *dout;            /* backward (only packed: query_start = key_start = NULL)    */
    float *dq, *dk, *dv;
} tt_attention_args;

typedef struct tt_logprobs_args {
    int n, dim, vocab;
    float inv_temperature;
    const float *x, *w;                 /* [n,dim], [vocab,dim]  */
    const uint16_t *half_w;             /* w in bf16, instead of w; only if the backend takes_half */
    const int32_t *targets;             /* [n]                   */
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
     * = never. */
    tt_status (*gemm)(tt_context *ctx, const tt_gemm_args *args);
    size_t    (*gemm_panels)(tt_context *ctx, const tt_gemm_args *args, void *to);

    /* Attention. A cache keeps keys in the order in which one query reads them: key_tile rows side by side
     * for each channel. The cache of a sequence begins at a multiple of key_tile rows. store_keys: row i of
     * k [n, heads*head_dim] goes to rows[i]. NULL = plain rows. */
    tt_status (*attention_forward)(tt_context *ctx, const tt_attention_args *args);
    tt_status (*attention_backward)(tt_context *ctx, const tt_attention_args *args);
    int       (*key_tile)(tt_context *ctx);
    tt_status (*store_keys)(tt_context *ctx, float *cache, const float *k, const int32_t *rows,
                            int n, int heads, int head_dim);

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
    void *panels;                   /* of gemm_panels, while tt_generate runs                */
    size_t panels_bytes;
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
 * sequence goes on where its slot ends; without one it begins at position 0. */

typedef struct tt_kv_cache tt_kv_cache;
typedef struct tt_batch_desc {
    int n_sequences;
    const int32_t *offsets;        /* [n_sequences + 1] from 0; sequence s is tokens[offsets[s] ..
                                      offsets[s+1]) */
    const int32_t *tokens;         /* [n_tokens]                                                         */
    const unsigned char *mask;     /* [n_tokens] 1 = a target, predicted from the token before it; the   */
                                   /* first of a sequence never is. NULL = every token but the first     */
    tt_kv_cache *cache;            /* NULL in training                                                   */
    const int32_t *cache_slots;    /* [n_sequences], with a cache                                        */
} tt_batch_desc;

/* Of this step. Arrays named d_ are on the backend, the others on the host. */
typedef struct tt_batch {
    tt_context *ctx;
    int n_sequences, n_tokens, n_targets, max_length;
    const int32_t *offsets, *tokens;
    const int32_t *positions;              /* [n_tokens] in the sequence, from the cache's length on     */
    const int32_t *target_rows, *targets;  /* [n_targets] row that predicts, token that is predicted     */
    const int32_t *d_offsets, *d_positions;
    const int32_t *d_query_start;          /* [n_sequences] first position, with a cache                 */
    const int32_t *d_key_start;            /* [n_sequences] first row of the slot in the cache           */
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
 * BPE, byte-level or of SentencePiece's kind. Files: Hugging Face's tokenizer.json of GPT-2, GPT-NeoX, Llama 2 and 3,
 * Mistral, Qwen 2 to 3, SmolLM2, Mistral-Nemo and alike, and .tiktoken ranks (r50k, p50k, cl100k, o200k, Llama 3). The ids are
 * those of the packages tokenizers 0.23 and tiktoken 0.14; what a file asks for and is not done here is an error
 * that names it. Memory: a tokenizer, and for each thread that encodes a cache of 1 MiB and what the longest text
 * without a split needs (36 bytes per byte of that piece, 16 for each added token in a text). Encoding and decoding write to
 * the tokenizer's caches, const as it is: like its context, it is used by one thread at a time. tt_encode_batch works on all
 * threads of the context; threads of your own take a context and a tokenizer each. */

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
typedef struct tt_text_source { size_t (*read)(void *user, char *bytes, size_t n); void *user; } tt_text_source;

typedef struct tt_tokenizer_desc {
    int vocab_size;                      /* incl. special tokens; 0 = 32000; fewer if the text has no more pairs */
    int min_frequency;                   /* of a pair to be merged; 0 = 2                                        */
    int all_bytes;                       /* 1: the alphabet is all 256 bytes; 0: those of text and special tokens */
    tt_pretokenizer pretokenizer;        /* 0 = GPT-2                                                            */
    const char *const *special_tokens;   /* get ids 0, 1, ... in this order                                      */
    int n_special_tokens;
} tt_tokenizer_desc;

/* Merges the most frequent pair until vocab_size; a tie goes to the pair with the smaller ids (left, then right). */
TT_API tt_tokenizer *tt_tokenizer_train(tt_context *, const tt_tokenizer_desc *, tt_text_source text);
/* The same from a list: each word, a space before it included, becomes one token (its bytes and beginnings are tokens too).
 * Here min_frequency 0 = 1 and pretokenizer 0 = WHITESPACE. n may be 0. */
TT_API tt_tokenizer *tt_tokenizer_words(tt_context *, const tt_tokenizer_desc *desc_or_null, const char *const *words, int n);
TT_API tt_tokenizer *tt_tokenizer_load(tt_context *, const char *path);                /* tokenizer.json or .tiktoken, by its content */
TT_API tt_tokenizer *tt_tokenizer_parse(tt_context *, const char *file, size_t size);
TT_API tt_status     tt_tokenizer_save(const tt_tokenizer *, const char *tokenizer_json_path);
TT_API tt_status     tt_tokenizer_json(const tt_tokenizer *, tt_text *out);
TT_API void          tt_tokenizer_destroy(tt_tokenizer *);
TT_API int           tt_vocab_size(const tt_tokenizer *);                              /* highest id + 1        */
TT_API int           tt_token_id(const tt_tokenizer *, const char *text);              /* of a whole token as it decodes, e.g. "<end>" or " the"; -1 if none */
TT_API int           tt_token_is_special(const tt_tokenizer *, int id);

typedef enum tt_special { TT_SPECIAL_PARSE = 0, TT_SPECIAL_TEXT, TT_SPECIAL_REFUSE } tt_special;
/* Both append to out, or on failure nothing. Special tokens in the text are cut out first (PARSE), read as plain
 * text (TEXT), or are an error (REFUSE). Decoding gives the bytes back, also such as are no UTF-8, but for what the
 * file's normalizer has changed (NFC; the space that Llama 2 adds is taken off again, and so is the text's own where
 * Metaspace, finding one, adds none). An id without a token reads as U+FFFD: models have more rows than their tokenizer has
 * tokens, and may sample one of them. */
TT_API tt_status tt_encode(const tt_tokenizer *, const char *text, size_t size, tt_special special, tt_ids *out);
TT_API tt_status tt_decode(const tt_tokenizer *, const int32_t *ids, size_t n, int skip_special, tt_text *out);
/* As tt_encode, with the tokens that the file's post_processor puts around a text (Llama: its BOS). */
TT_API tt_status tt_encode_document(const tt_tokenizer *, const char *text, size_t size, tt_special special, tt_ids *out);
/* How every prompt here begins. The text, whose special tokens count, with the question, which is plain text, in the place of
 * each {question} (NULL: the text as it is), encoded as one. In front stands what the post_processor puts before a text
 * (Llama: its BOS), unless the prompt begins with it, or with a turn of a chat template (<|im_start|>, <|start_header_id|>):
 * such a template says itself how it begins. What follows a prompt, an answer or feedback, is tt_encode's. */
TT_API tt_status tt_encode_prompt(const tt_tokenizer *, const char *text, size_t size, const char *question, size_t question_size, tt_ids *out);
/* Many texts on all threads; text i gives out->data[offsets[i] .. offsets[i+1]), the ids that tt_encode gives.
 * offsets has n + 1 places; out is appended to. */
typedef struct tt_span { const char *data; size_t size; } tt_span;
TT_API tt_status tt_encode_batch(const tt_tokenizer *, const tt_span *texts, size_t n, tt_special special, tt_ids *out, size_t *offsets);

/* What tt_encode refuses (TT_ERR_ARG, which names byte and offset). BYTES, the default: a byte without a token, where
 * a vocabulary has not all 256 (SmolLM2, or trained without all_bytes); else such bytes vanish, as in Hugging Face.
 * UTF8: text that is no valid UTF-8; else its bytes are encoded as they are. */
enum { TT_REFUSE_NOTHING = 0, TT_REFUSE_BYTES = 1, TT_REFUSE_UTF8 = 2 };
TT_API void tt_tokenizer_refuse(tt_tokenizer *, int what);

/* Decoding token by token: what comes out is whole characters; half of one is held until its rest comes. All of it,
 * with the end, is what tt_decode gives. Start from {tokenizer, skip_special} with all else 0; it owns no memory. */
typedef struct tt_decoder { const tt_tokenizer *tokenizer; int skip_special, started, n_held; char held[4]; } tt_decoder;
TT_API tt_status tt_decoder_push(tt_decoder *, int32_t id, tt_text *out);
TT_API tt_status tt_decoder_end(tt_decoder *, tt_text *out);       /* appends what is held, and begins anew */

/* The text of a conversation, byte for byte that of transformers' apply_chat_template without tools. Formats: "chatml";
 * "qwen2", "qwen2.5", "smollm2" (the same with a system message of their own where none is given), "qwen3" (thoughts only
 * behind the last question), "llama3", "llama3.1" (also 3.2 and 3.3: its system message begins with two dates), and
 * "plain" ("role: content" lines). The roles of qwen2.5, qwen3 and llama3.1 are system, user and assistant. n may be 0. */
typedef struct tt_message { const char *role, *content; } tt_message;
typedef struct tt_chat_desc {
    const char *format;              /* NULL or "" = by the tokenizer's special tokens: chatml, llama3, llama3.1, or else plain */
    const tt_tokenizer *tokenizer;   /* may be NULL                                                                  */
    const char *date;                /* today's, for llama3.1; NULL = "26 Jul 2024", as its template says            */
    int generation_prompt;           /* 1: opens the assistant's answer at the end                                   */
    int parse_content;               /* tt_chat_encode: 1 = special tokens in roles and contents count, as in transformers */
    size_t from;                     /* tt_chat_encode: bytes of the text to leave out, since their ids are known   */
} tt_chat_desc;
TT_API tt_status   tt_chat_render(tt_context *, const tt_chat_desc *, const tt_message *messages, int n, tt_text *out);
/* The same as ids, appended to out; the tokenizer is required. The template's special tokens count; what stands in role and
 * content is text, so that nobody's text ends a turn or begins one ("plain" has no tokens for it and cannot tell). It begins
 * as in tt_encode_prompt, unless from leaves that out. answer_or_null: the last message is the assistant's, out receives all up to where sampling begins, answer the rest, which is what is to be learnt. */
TT_API tt_status   tt_chat_encode(tt_context *, const tt_chat_desc *, const tt_message *messages, int n, tt_ids *out, tt_ids *answer_or_null);
/* The format that a chat_template of Hugging Face writes, a text that lives for ever; NULL and TT_ERR_FILE if it is none
 * of the above to the letter (but for its part about tools). See also tt_model_chat_format. */
TT_API const char *tt_chat_recognize(tt_context *, const char *chat_template, size_t size);

/* ==== 7. model =============================================================================
 * One decoder-only transformer, switched by config. Field and tensor names are Hugging Face's. */

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
    int max_position_embeddings;      /* 0 = 2048; costs memory only as far as positions are used, but in gpt2 */
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
    char model_type[32];              /* "llama", "qwen2", "qwen3", "mistral", "smollm3", "gpt2"; "" = llama or gpt2 */
    int recompute;                    /* 1: per-layer recomputation in backward (memory for time); not in config.json */
} tt_model_config;

typedef struct tt_model tt_model;
/* Seeded init: embedding N(0,1) (gpt2 and tied: 0.02), head 0.02, matrices N(0, 1/fan_in), residual outputs further / sqrt(2 layers). */
TT_API tt_model *tt_model_create(tt_context *, const tt_model_config *, uint64_t seed);
TT_API tt_model *tt_model_copy(const tt_model *);                         /* same weights and adapters, no gradients (frozen teacher) */
TT_API tt_status tt_model_assign(tt_model *to, const tt_model *from);     /* copies the weights between equal configs and adapters  */
TT_API void      tt_model_destroy(tt_model *);
TT_API tt_kv_cache *tt_kv_cache_create(tt_model *, int n_slots, int capacity);
TT_API const tt_model_config *tt_model_config_get(const tt_model *);      /* resolved: defaults filled in    */
TT_API tt_context *tt_model_context(const tt_model *);
TT_API int        tt_model_n_params(const tt_model *);                    /* number of parameter tensors     */
TT_API tt_tensor *tt_model_param(const tt_model *, int index);            /* name is Hugging Face's          */
TT_API tt_tensor *tt_model_param_find(const tt_model *, const char *name);
TT_API size_t     tt_model_size(const tt_model *);                        /* total number of weights         */
TT_API void       tt_model_zero_grad(tt_model *);

/* hidden [N,C] after the last norm; logits [N,V] of hidden rows; logprobs [batch n_targets] of the masked tokens
 * under softmax(logits / temperature), entropy_out (may be NULL) beside it. */
TT_API tt_tensor *tt_model_forward(tt_model *, const tt_batch *);
TT_API tt_tensor *tt_model_logits(tt_model *, tt_tensor *hidden);
TT_API tt_tensor *tt_model_logprobs(tt_model *, const tt_batch *, float temperature, tt_tensor **entropy_out);

/* Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): the product of each target matrix gains scale (x A^T) B^T with
 * A [rank, in], B [out, rank]; scale = alpha / rank. B starts at zero, A from U(-1, 1) / sqrt(in), as in peft. */
typedef struct tt_lora_desc {
    int rank;                               /* 0 = 8                                                              */
    float alpha;                            /* 0 = 2 rank                                                         */
    int use_rslora;                         /* 1: scale = alpha / sqrt(rank) (arXiv 2312.03732)                   */
    const char *const *target_modules;      /* "q_proj", "mlp.c_proj", "model.layers.0.self_attn.q_proj": the last */
    int n_target_modules;                   /* parts of a module's name; 0 = every matrix of every layer          */
    uint64_t seed;                          /* of A                                                               */
} tt_lora_desc;
/* Adds adapters after the model's parameters and freezes these: gradients, optimizers made from now on, and their state
 * know the adapters alone. Names are "MODULE.lora_A.weight" and "MODULE.lora_B.weight". On failure nothing has changed. */
TT_API tt_status tt_model_lora_add(tt_model *, const tt_lora_desc *desc_or_null);
TT_API const tt_lora_desc *tt_model_lora_get(const tt_model *);           /* resolved; NULL without adapters  */
/* Off, the model is its base: the reference policy, without a second copy. Returns whether they were on. */
TT_API int       tt_model_lora_enable(tt_model *, int on);
/* Adds the adapters' products to the matrices, removes them and makes the weights trainable again. Optimizers made with
 * the adapters must be gone. Weights mapped from a file cannot take them: load those with tt_model_load. */
TT_API tt_status tt_model_lora_merge(tt_model *);

/* ==== 8. files ========================================================================
 * A model on disk is a Hugging Face directory: config.json, model.safetensors (or shards with
 * model.safetensors.index.json), generation_config.json and the chat template (kept as they are), tokenizer.json.
 * Every file is written to a temporary name, synced and renamed. Before the first, all values are looked at: one that is not
 * finite in the type of the file is TT_ERR_NUMBER with the tensor's name, and all files stay as they were. That costs one
 * pass over the data (on a GPU, a download).
 * Where the system can, safetensors files are read by mapping them: from _open to _close, and within any _load; a file that
 * another program cuts short just then ends this one by SIGBUS. */

/* Weights of a tied pair may be stored under either name; where both are there and differ, the pair is not tied, as in
 * transformers. All shapes are compared with config.json before memory is asked for. */
TT_API tt_model *tt_model_load(tt_context *, const char *dir);
/* The same for sampling and as a base of adapters: no weight requires a gradient, and those that need no conversion stay
 * in the file, mapped read-only: float32, layers' matrices of bf16 or f16, and embedding and head of bf16 (on the CPU). Half
 * precision is widened as it is used. The files must not be changed while the model lives: one that another program cuts
 * short ends this one by a signal, SIGBUS. Programs that run for hours had better load. */
TT_API tt_model *tt_model_map(tt_context *, const char *dir);
TT_API tt_status tt_model_save(const tt_model *, const tt_tokenizer *tokenizer_or_null, const char *dir);
typedef struct tt_save_desc {
    size_t max_shard_bytes;       /* a new file before a tensor that would pass this; 0 = one file             */
    tt_dtype dtype;               /* of all weights: 0 = TT_F32, TT_BF16 or TT_F16, rounded to nearest even    */
} tt_save_desc;
/* A model with adapters cannot be saved: merge them, or save them apart. */
TT_API tt_status tt_model_save_as(const tt_model *, const tt_tokenizer *tokenizer_or_null, const char *dir, const tt_save_desc *);
/* Adapters as a directory of peft: adapter_config.json and adapter_model.safetensors. Load adds them to their base, or fails
 * and leaves the model as it was. */
TT_API tt_status tt_model_lora_save(const tt_model *, const char *dir);
TT_API tt_status tt_model_lora_load(tt_model *, const char *dir);
/* The format of the directory's chat template, for tt_chat_desc: "" if there is none, NULL and an error if tt_chat_recognize
 * does not know it. */
TT_API const char *tt_model_chat_format(const tt_model *);
TT_API tt_status tt_model_config_parse(tt_context *, const char *json, size_t size, tt_model_config *out);
TT_API tt_status tt_model_config_json(const tt_model_config *, tt_text *out);

/* Training state in one atomic safetensors file: any named long-lived tensors, all finite, and one JSON text (counters,
 * positions). Loading wants the same names and shapes, and changes nothing if it fails. metadata "checksum" covers the text
 * and the name and bytes of every tensor: a state that has changed on disk is TT_ERR_FILE. It may be missing, as in files of
 * other programs; whoever edits a state by hand removes it. */
typedef struct tt_named { const char *name; tt_tensor *tensor; } tt_named;
TT_API tt_status tt_state_save(tt_context *, const char *path, const tt_named *tensors, int n, const char *json);
TT_API tt_status tt_state_json(tt_context *ctx, const char *path, tt_text *json_out);   /* the JSON alone */
TT_API tt_status tt_state_load(tt_context *, const char *path, const tt_named *tensors, int n, tt_text *json_out);

/* Reading any safetensors file: tensors in file order, converted to float on read. The file stays mapped until _close, see above. */
typedef struct tt_safetensors tt_safetensors;
typedef struct tt_safetensors_info { const char *name; tt_dtype dtype; int ndim; size_t shape[8], size; } tt_safetensors_info;
TT_API tt_safetensors *tt_safetensors_open(tt_context *, const char *path);
TT_API void            tt_safetensors_close(tt_safetensors *);
TT_API int             tt_safetensors_count(const tt_safetensors *);
TT_API tt_safetensors_info tt_safetensors_info_get(const tt_safetensors *, int index);
TT_API int             tt_safetensors_find(const tt_safetensors *, const char *name);      /* -1 if absent */
TT_API tt_status       tt_safetensors_read(tt_safetensors *, int index, float *out);
TT_API const char     *tt_safetensors_metadata(const tt_safetensors *, const char *key);   /* NULL if absent */

/* ==== 9. generate ===========================================================================
 * Continuous batching: a slot is refilled as its sequence ends; the samples of one prompt share its
 * prefill, and all prompts that of the tokens (32 or more) with which they all begin. The sequence of
 * (request id, sample) depends on nothing but model, prompt, settings and seed. */

typedef struct tt_sampling {
    int max_new_tokens;           /* 0 = 128                                                    */
    int greedy;                   /* 1 = most likely token, lowest id on a tie                  */
    float temperature;            /* divides the logits, 1e-30 or more; 0 = 1. Then, in this order, each on
                                     what the one before has left, as in transformers:          */
    int top_k;                    /* keep the k most likely, and what equals the last; 0 = all  */
    float top_p;                  /* drop the least likely, of equals the highest id first, that
                                     together have at most 1 - top_p; in (0,1]; 0 = 1 (off)     */
    float min_p;                  /* drop tokens below min_p * the largest probability; 0 = off */
    float repetition_penalty;     /* Hugging Face's; 0 = 1 (off)                                */
    uint64_t seed;
    const int32_t *stop_tokens;   /* a sequence ends with (and includes) any of these           */
    int n_stop_tokens;
    int max_batch;                /* slots; 0 = 128, never more than there are sequences        */
    /* called for each token as it is sampled; non-zero stops everything with TT_ERR_STOP       */
    int (*on_token)(void *user, int request, int sample, int32_t token, float logprob);
    void *user;
} tt_sampling;
/* As the model's generation_config.json says: greedy unless do_sample is true, temperature, top_k, top_p, min_p,
 * repetition_penalty, and every token that ends a text. stop_tokens belongs to the model. */
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
    float *logprobs;              /* under softmax(logits / temperature), before top-k/p/min-p and penalty */
} tt_completion;
typedef struct tt_completions { tt_context *ctx; int n; tt_completion *items; size_t n_tokens; } tt_completions;
/* out receives all samples, request by request. prompt + max_new_tokens must fit max_position_embeddings. */
TT_API tt_status tt_generate(tt_model *, const tt_request *requests, int n, const tt_sampling *, tt_completions *out);
TT_API void      tt_completions_free(tt_completions *);

/* ==== 10. optimizer ========================================================================= */

/* With rates and decays up to here one update moves no weight by more than a few powers of ten. A weight that is
 * not finite is found by the next forward pass: its gradients are not, and tt_generate names the position. */
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
    float *sampling_logprobs;           /* [response_length] by the sampler; NaN where it did not sample  */
    float *old_logprobs, *ref_logprobs; /* [response_length] by the trainer; NULL until computed          */
    int stopped;                        /* exactly one end token, at the very end                         */
    int guided;                         /* continued by a teacher                                         */
    int off_policy;                     /* written by the user: tt_rollout_off_policy                     */
    int attempt_length;                 /* guided: tokens before the feedback                             */
    float attempt_reward;               /* guided: reward of the response before the feedback             */
    float rewards[TT_MAX_REWARDS];      /* NaN = abstains                                                 */
    float reward, advantage;            /* reward NaN: nobody scored it                                   */
} tt_rollout;

typedef struct tt_rollouts {
    tt_context *ctx;
    int n, n_groups, num_generations;
    int n_rewards;                      /* rewards in use, 1 after create                                 */
    tt_rollout *items;                  /* [n], group by group                                            */
    char **questions;                   /* [n_groups] what a teacher reads; NULL = the prompt's plain text */
} tt_rollouts;

/* From completions: requests[g] gave num_generations samples each. end_token decides what is .stopped. */
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
/* Weight w = p_old / p_sampler of the policy loss where sampler and trainer disagree (top-p, another engine).
 * */
typedef enum tt_mismatch {
    TT_MISMATCH_OFF = 0,
    TT_MISMATCH_TOKEN_TRUNCATE, /* w of the token, within [mismatch_low, mismatch_high]                 */
    TT_MISMATCH_TOKEN_MASK,     /* w of the token, 0 outside                                            */
    TT_MISMATCH_SEQ_TRUNCATE,   /* product of w over the response, within the bounds                    */
    TT_MISMATCH_SEQ_MASK,       /* product of w over the response, 0 outside                            */
    TT_MISMATCH_GEOMETRIC_MASK /* w of the token, 0 in responses whose geometric mean of w is outside: OpenRLHF */
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
    double advantage;
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
    void *token_loss_user;
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
 * ignored. */
TT_API tt_batch  *tt_rollouts_batch(tt_context *, const tt_rollouts *all, const int *indices, int n);
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
} tt_think_config;
typedef struct tt_think_metrics {
    double pct; int n_guided, n_eligible;
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
} tt_think_metrics;
TT_API double    tt_think_pct(const tt_think_config *, int step);      /* of the schedule */
TT_API int       tt_think_active(const tt_think_config *, int step);   /* 0 once the teacher is off */
typedef struct tt_augment {
    const tt_teacher *teacher;
    const tt_tokenizer *tokenizer;
    int end_token;
    int max_completion_length;    /* a guided response is cut there                                   */
    int step;                     /* of the schedule and of the random selection                      */
} tt_augment;
/* Selects per group k = max(1, floor(eligible * pct)) stopped responses without replacement, asks the
 * teacher, replaces them in place (cut at max_completion_length, and counted: n_cut) and sets kind, guided,
 * attempt_length. Rewards come afterwards. What the teacher says is bytes of any kind and length; a reason or
 * phrase whose data is NULL is empty. */
TT_API tt_status tt_think_augment(tt_rollouts *, const tt_augment *, const tt_think_config *,
                                  tt_think_metrics *);
/* After the rewards: the rates. A response is right if its first reward is above one half. */
TT_API void      tt_think_score(const tt_rollouts *, tt_think_metrics *);

/* ==== 13. train ========================================================================== */

/* A task: where prompts come from and what a response is worth. Texts are appended to tt_text. */
typedef struct tt_reward_input {
    const char *question, *answer, *response;   /* NUL-terminated; response without its end token */
    size_t response_size;
    int stopped;                                /* exactly one end token, at the very end         */
    const int32_t *tokens;                      /* [n_tokens] of the response, with its end token */
    int n_tokens;
    int prompt, sample;                         /* which it is, for errors                        */
} tt_reward_input;
/* What a response did: was the first attempt right, the final answer, and which reflection stands between. */
typedef enum tt_behaviour { TT_NO_REFLECTION = 0, TT_SELF_AGREEMENT, TT_SELF_CONFLICT, TT_SELF_CONSULTATION, TT_SELF_CRITIQUE, TT_N_BEHAVIOURS } tt_behaviour;
typedef struct tt_outcome { int final_right, first_right, reflects; tt_behaviour behaviour; } tt_outcome;
typedef struct tt_task {
    const char *name;
    /* question number `index` of a split (0 train, 1 held out) and its gold answer; any index is valid */
    tt_status (*question)(void *user, int split, uint64_t index, tt_text *question, tt_text *answer);
    tt_status (*reward)(void *user, const tt_reward_input *in, float *reward);   /* NaN = abstain */
    /* behaviour of a response: see tt_outcome; NULL = the default: it reflects from the first "wait", "check", "verify" or "mentor"
     * on, the first attempt is what stands before, the reward judges both, and words tell the behaviour */
    tt_status (*judge)(void *user, const tt_reward_input *in, tt_outcome *out);
    const char *prompt_template;                /* around {question}, e.g. "<user>{question}<student>"; see tt_encode_prompt */
    const char *end_token;                      /* text of the token that ends a response              */
    void *user;
    /* appends the final answer in a form in which equal answers are equal texts, for maj@k; nothing = no answer;
     * NULL = \boxed{...}, what follows "####", or the last number */
    tt_status (*extract)(void *user, const tt_reward_input *in, tt_text *answer);
    /* how many questions a split has, index i being i % count: tt_trainer_create then reads them all, and refuses by name one whose
     * prompt leaves no room for max_completion_length; NULL = without end: such a prompt is an error of the step that draws it */
    int (*count)(void *user, int split);
} tt_task;

/* A reward beside the task's. A reward function that fails (but for TT_ERR_STOP and TT_ERR_MEM) or returns an infinity
 * abstains from that response; this is counted and logged. Only if nobody scores any response does the step fail. */
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
TT_API tt_status   tt_prompts_create(tt_context *, const tt_task *, const tt_tokenizer *, int n, tt_prompts *out);
TT_API tt_status   tt_prompts_set(tt_prompts *, int i, int split, uint64_t number);   /* question `number` of a split in place i, also again */
TT_API const char *tt_prompts_question(const tt_prompts *, int i);
TT_API const char *tt_prompts_answer(const tt_prompts *, int i);
/* in has tokens, n_tokens, stopped and sample; the rest is filled. response receives the text, which in points to. */
TT_API tt_status   tt_prompts_input(const tt_prompts *, int i, tt_text *response, tt_reward_input *in);
TT_API void        tt_prompts_free(tt_prompts *);
/* Are model, tokenizer and task complete, and made for each other? An error names who asks. */
TT_API tt_status   tt_task_check(tt_model *, const tt_tokenizer *, const tt_task *, const char *who, int *end_token);

/* How many calls have failed, and the first of them. Start from zero. */
typedef struct tt_reward_errors { int n; tt_status status; char text[512]; } tt_reward_errors;
/* A call that fails, or gives an infinity, counts as NaN; TT_ERR_STOP and TT_ERR_MEM are passed on. */
TT_API tt_status   tt_reward_call(tt_context *, const tt_reward *, const tt_reward_input *, tt_reward_errors *, float *out);
/* What a response with that reward of the task did; nothing if the reward is NaN or the judge fails. */
TT_API tt_status   tt_judge(tt_context *, const tt_task *, const tt_reward_input *, float reward, tt_reward_errors *, tt_outcome *out);
/* Sums of outcomes, and the rates that they make. */
typedef struct tt_tally { double n, right, first, reflects, corrected, spoiled, length, stopped, behaviour[TT_N_BEHAVIOURS]; } tt_tally;
typedef struct tt_rates {
    double accuracy, first_accuracy, reflection_rate;
    double correction_rate;        /* right at the end, of those whose first attempt was wrong */
    double spoil_rate;             /* wrong at the end, of those whose first attempt was right */
    double mean_length, stopped_rate, behaviour[TT_N_BEHAVIOURS];
} tt_rates;
TT_API void        tt_tally_add(tt_tally *, const tt_outcome *, int length, int stopped);
TT_API tt_rates    tt_tally_rates(const tt_tally *);

/* Ready-made beside the header, in examples/, for programs that include them behind this file:
 * tasks.h (tt_signs_*, tt_puzzles_*, tt_jsonl_*), rewards.h (tt_reward_*, tt_answer_*), evaluate.h
 * (tt_evaluate, tt_bootstrap, tt_pass_at_k, ...). */

/* ---- more than one process: the same program runs as several ranks, over MPI or whatever fills the hook ----
 * A batch is cut into n_parts parts of which rank r has its consecutive n_parts / world_size. For each of them: backward of
 * a loss whose denominators are those of ALL parts, then tt_reducer_add; tt_reducer_sum then leaves the sum over all parts
 * of all ranks in the gradients of the model. The parts are summed as a binary tree, and a hook that sums 2, 4, 8, ... ranks
 * in the same way goes on with it: runs with equal n_parts give the same bits at any number of ranks. That costs a copy of
 * the gradients for each halving of a rank's parts, and matrix products of one part each. */
typedef struct tt_reducer_desc {
    tt_model *model;               /* lent                                                     */
    /* sums data[0..n), memory of the backend, over all ranks in place: the same bits on every rank; NULL = one process */
    tt_status (*allreduce)(void *user, float *data, size_t n);
    void *user;
    int rank, world_size;          /* world_size 0 = 1                                         */
    int n_parts;                   /* a power of two and a multiple of world_size; 0 = world_size, whatever that is */
} tt_reducer_desc;
typedef struct tt_reducer tt_reducer;
TT_API tt_reducer *tt_reducer_create(tt_context *, const tt_reducer_desc *);   /* for the parameters that require a gradient now */
TT_API void        tt_reducer_destroy(tt_reducer *);
TT_API const tt_reducer_desc *tt_reducer_desc_get(const tt_reducer *);         /* resolved */
TT_API tt_status   tt_reducer_add(tt_reducer *);
TT_API tt_status   tt_reducer_sum(tt_reducer *);
/* all[rank * n + i] = mine[i] of each rank, exactly (within the range of float; NaN and infinities too). */
TT_API tt_status   tt_reducer_gather(tt_reducer *, const double *mine, int n, double *all);

/* The hook over NCCL, in tt_cuda.cu compiled with TT_CUDA_NCCL: one process a GPU, the sum stays on the devices. Rank 0 makes
 * an id and brings it to the others by its own means (examples/parallel_nccl.h: MPI); then all create together.
 * ordered = 1: ranks are summed as the tree above; 0: in NCCL's own order, faster, the same bits at equal ranks and machines.
 * The hook's user is the tt_nccl. NULL, or TT_ERR_DEVICE with NCCL's reason, on failure. Not a word reaches the host. */
#define TT_NCCL_ID_BYTES 128
typedef struct tt_nccl tt_nccl;
extern tt_status tt_nccl_id(tt_context *, char id[TT_NCCL_ID_BYTES]);
extern tt_nccl  *tt_nccl_create(tt_context *, const char id[TT_NCCL_ID_BYTES], int rank, int world_size, int ordered);
extern void      tt_nccl_destroy(tt_nccl *);
extern tt_status tt_nccl_allreduce(void *nccl, float *data, size_t n);

enum { TT_MAX_SKIPPED = 10 };      /* updates in a row that are left out before a run is given up, unless it says otherwise */
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
    int measure_kl;                /* 1: the metric kl also with beta 0, at the cost of a forward pass of the reference */
    const tt_named *also;          /* tensors of your own that are saved and loaded with the trainer; lent */
    int n_also;
    /* Responses of your own (LUFFY): appends the text of number k for the question; nothing appended = none. The last
     * n_off_policy samples of each group give way to them. */
    tt_status (*off_policy)(void *user, const char *question, const char *answer, int k, tt_text *response);
    void *off_policy_user;
    int n_off_policy;              /* 0 = 1 with off_policy; fewer than num_generations        */
    /* After so many steps in a row with an update skipped, a mean reward <= abort_reward or a mean entropy <
     * abort_entropy, tt_trainer_step gives its metrics and TT_ERR_STOP with the reason in tt_error. */
    int abort_patience;            /* 0 = never, but for skipped updates: after TT_MAX_SKIPPED steps; -1 = never */
    float abort_reward;            /* 0 = 0                                                    */
    float abort_entropy;           /* 0 = 0.001                                                */
    tt_adamw_desc adamw;
    tt_schedule schedule;
    int prompts_per_step;          /* 0 = 16                                                   */
    int max_batch;                 /* sampler slots; 0 = 128                                   */
    uint64_t seed;
    /* Scale-out seam, see tt_reducer_desc. A prompt's group stays on one rank; rollouts, advantages and denominators are
     * those of one process, and so are the metrics; the rollouts at hand are the rank's own. The gradients are summed as
     * one buffer. After a failed step the other ranks still wait: end the job. */
    tt_status (*allreduce)(void *user, float *data, size_t n);
    void *allreduce_user;
    int rank, world_size;          /* world_size 0 = 1; divides the prompts of a mini-batch    */
    int gradient_parts;            /* n_parts of each mini-batch: the same bits at every number of ranks that divides it; 0 = world_size */
} tt_trainer_desc;
/* Two rewards, each under one name: `reward`, TRL's, is the mean over all responses of the step, which the update learns from;
 * `own reward`, in the metrics think/own_reward, the mean over the student's own ones, without guided and off-policy responses.
 * Without a teacher the two are equal. */
typedef struct tt_step_metrics {
    int step;
    tt_grpo_metrics grpo;          /* grpo.reward: reward; think.own_reward: own reward        */
    tt_think_metrics think;
    double mean_length, clipped_ratio, reflection_rate, correction_rate, spoil_rate;   /* of the student's own responses, before a teacher's */
    double behaviour[TT_N_BEHAVIOURS];
    double grad_norm, learning_rate;
    double update_skipped;         /* updates left out because a gradient was not finite       */
    double reward_errors;          /* calls of a reward function that failed                   */
    double n_resampled;            /* groups that dynamic sampling replaced                    */
    double n_off_policy_cut;       /* responses of your own that max_completion_length cut     */
    double num_tokens;             /* tokens sampled by student and teacher since step 0       */
    double rollout_tokens, update_tokens;   /* of this step: sampled by the student; of forward and backward passes */
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
TT_API tt_status   tt_trainer_save(tt_trainer *, const char *path);          /* weights, moments, counters: resumes bit for bit */
TT_API tt_status   tt_trainer_load(tt_trainer *, const char *path);
TT_API tt_status   tt_metrics_json(const tt_step_metrics *, tt_text *out);   /* one JSON object, TRL/verl names, no newline; no timings if step_s is 0 */


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
 * The context, and what every chapter stands on: errors, memory, text, numbers, files, JSON, random numbers.
 * A step's memory is an arena: a list of chunks that is filled from front to back and emptied at once. */

#define TTI_ERROR_SIZE 5120      /* the longest path, and what is said of it */
#define TTI_CHUNK ((size_t)1 << 20)
#define TTI_ALIGN ((size_t)64)

typedef struct tti_chunk { struct tti_chunk *next; char *base; size_t size, used; } tti_chunk;
typedef struct tti_arena { tti_chunk *first, *current; int on_backend; } tti_arena;
typedef struct tti_mark { tti_chunk *chunk; size_t used; } tti_mark;

struct tti_team;        /* below: the threads of a context       */
struct tti_node;        /* chapter 4: one recorded op            */
struct tti_spare;       /* chapter 4: a gradient buffer to reuse */

struct tt_context {
    tt_allocator allocator;
    tt_log_fn log;
    void *log_user;
    size_t current_bytes, peak_bytes;
    int n_threads;
    struct tti_team *team;                /* NULL until there is work for more than one     */
    char kernel_wish[16];                 /* desc.kernel or TT_KERNEL, "" = best            */
    char matmul_wish[16];                 /* desc.matmul or TT_MATMUL, "" = f32             */
    const char *kernel_name;              /* set by the CPU kernels                         */
    char error[TTI_ERROR_SIZE];
    tt_status status;                     /* of the error text                              */
    const char *failed;                   /* the function that it is of, where that is known */
    tt_status broken;                     /* a bad desc: every call fails                   */
    int graph_error;                      /* the error sticks: graph building has failed    */
    const tt_backend *backend;
    void *backend_state, *cpu_state;      /* equal on the CPU backend                       */
    tti_arena host, device;               /* memory of the step                             */
    struct tti_node *tape;                /* newest op first                                */
    struct tti_spare *spare_grads;
    int no_grad;
};

/* ---- numbers as text ----
 * The C library's strtod and printf follow the host's locale, which may write 0.5 as 0,5. Here numbers are read and written
 * with a point, and exactly: as quotients of whole numbers of at most TTI_LIMBS * 32 bits. */
#define TTI_LIMBS 128
#define TTI_MAX_DIGITS 780         /* more significant digits than this cannot move a double, but for not being zero */
typedef struct tti_big { int n; uint32_t limb[TTI_LIMBS]; } tti_big;      /* the lowest first; limb[n - 1] is not zero */

/* a * factor + add */
static void tti_big_scale(tti_big *a, uint32_t factor, uint32_t add) {
    uint64_t carry = add;
    int i;
    for (i = 0; i < a->n; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry && a->n < TTI_LIMBS) { a->limb[a->n++] = (uint32_t)carry; }
}
static void tti_big_power(tti_big *a, int n) {      /* a * 10^n */
    for (; n >= 9; n -= 9) { tti_big_scale(a, 1000000000u, 0); }
    for (; n > 0; n--) { tti_big_scale(a, 10, 0); }
}
static void tti_big_shift(tti_big *a, int bits) {   /* a * 2^bits */
    int limbs = bits / 32;
    if (a->n && limbs && a->n + limbs <= TTI_LIMBS) {
        memmove(a->limb + limbs, a->limb, (size_t)a->n * sizeof *a->limb);
        memset(a->limb, 0, (size_t)limbs * sizeof *a->limb);
        a->n += limbs;
    }
    tti_big_scale(a, (uint32_t)1 << bits % 32, 0);
}
static void tti_big_set(tti_big *a, uint64_t value, int shift) {      /* value * 2^shift */
    a->limb[0] = (uint32_t)value;
    a->limb[1] = (uint32_t)(value >> 32);
    a->n = a->limb[1] ? 2 : a->limb[0] ? 1 : 0;
    tti_big_shift(a, shift);
}
static int tti_big_bits(const tti_big *a) {
    int bits = a->n ? 32 * (a->n - 1) : 0;
    uint32_t top = a->n ? a->limb[a->n - 1] : 0;
    for (; top; top >>= 1) { bits++; }
    return bits;
}
static int tti_big_compare(const tti_big *a, const tti_big *b) {
    int i;
    if (a->n != b->n) { return a->n < b->n ? -1 : 1; }
    for (i = a->n - 1; i >= 0; i--) { if (a->limb[i] != b->limb[i]) { return a->limb[i] < b->limb[i] ? -1 : 1; } }
    return 0;
}
/* a + sign * b; not below zero */
static void tti_big_add(tti_big *a, const tti_big *b, int sign) {
    int64_t carry = 0;
    int i;
    for (i = 0; i < b->n || (carry && i < TTI_LIMBS); i++) {
        if (i == a->n) { a->limb[a->n++] = 0; }
        carry += (int64_t)a->limb[i] + (i < b->n ? sign * (int64_t)b->limb[i] : 0);
        a->limb[i] = (uint32_t)carry;
        carry = carry < 0 ? -1 : carry >> 32;
    }
    while (a->n && a->limb[a->n - 1] == 0) { a->n--; }
}
/* The double nearest to a / b, of two the even one. Both are used up. */
static double tti_big_quotient(tti_big *a, tti_big *b) {
    int exponent = tti_big_bits(a) - tti_big_bits(b), drop, i;
    uint64_t bits = 0, rest, half, kept;
    tti_big_shift(exponent < 0 ? a : b, exponent < 0 ? -exponent : exponent);
    if (tti_big_compare(a, b) < 0) { exponent--; tti_big_shift(a, 1); }
    for (i = 0; i < 64; i++) {                          /* 1 <= a / b < 2: its first 64 bits */
        int bit = tti_big_compare(a, b) >= 0;
        if (bit) { tti_big_add(a, b, -1); }
        bits = bits << 1 | (uint64_t)bit;
        tti_big_shift(a, 1);
    }
    drop = exponent < -1022 ? 11 - 1022 - exponent : 11;
    if (drop > 64) { return 0; }
    half = (uint64_t)1 << (drop - 1);
    rest = bits & (half | (half - 1));
    kept = drop == 64 ? 0 : bits >> drop;
    if (rest > half || (rest == half && (a->n || (kept & 1)))) { kept++; }
    return ldexp((double)kept, exponent - 63 + drop);
}
TT_API size_t tt_number_read(const char *text, size_t size, double *out) {
    char digits[TTI_MAX_DIGITS + 1];
    int n = 0, point = 0, any = 0, lost = 0, i, minus = size > 0 && *text == '-';
    int64_t exponent = 0, power = 0;
    size_t at = size > 0 && (*text == '-' || *text == '+'), next;
    tti_big a, b;
    for (; at < size && ((text[at] >= '0' && text[at] <= '9') || (text[at] == '.' && !point)); at++) {
        if (text[at] == '.') { point = 1; continue; }
        any = 1;
        exponent -= point;
        if (n == 0 && text[at] == '0') { continue; }
        if (n < TTI_MAX_DIGITS) { digits[n++] = text[at]; continue; }
        exponent++;
        lost |= text[at] != '0';
    }
    if (!any) { return 0; }
    next = at + 1;
    if (next < size && (text[next] == '-' || text[next] == '+')) { next++; }
    if (next < size && (text[at] == 'e' || text[at] == 'E') && text[next] >= '0' && text[next] <= '9') {
        int below = text[at + 1] == '-';
        for (at = next; at < size && text[at] >= '0' && text[at] <= '9'; at++) { if (power < ((int64_t)1 << 50)) { power = 10 * power + (text[at] - '0'); } }
        exponent += below ? -power : power;
    }
    if (lost) { digits[n++] = '1'; exponent--; }
    tti_big_set(&a, 0, 0);
    tti_big_set(&b, 1, 0);
    if (n == 0 || n + exponent < -330) { *out = 0; }
    else if (n + exponent > 310) { *out = HUGE_VAL; }
    else if (n <= 15 && exponent == 0) {
        int64_t whole = 0;
        for (i = 0; i < n; i++) { whole = 10 * whole + (digits[i] - '0'); }
        *out = (double)whole;
    } else {
        for (i = 0; i < n; i++) { tti_big_scale(&a, 10, (uint32_t)(digits[i] - '0')); }
        tti_big_power(exponent < 0 ? &b : &a, (int)(exponent < 0 ? -exponent : exponent));
        *out = tti_big_quotient(&a, &b);
    }
    if (minus) { *out = -*out; }
    return at;
}
/* The fewest digits that lie nearer to value = m * 2^e than to its neighbours (Steele and White 1990), as
 * 0.DIGITS * 10^*point; narrow: the neighbour below is only half as far. Returns how many digits. */
static int tti_shortest(double value, uint64_t m, int e, int narrow, char digits[24], int *point) {
    tti_big r, s, above, below, sum;      /* value = r / s; half the way to the neighbours is above / s and below / s */
    int up = e > 0 ? e : 0, down = e < 0 ? -e : 0, even = (m & 1) == 0, n = 0, k = (int)ceil(log10(value) - 1e-10), low, high, digit;
    tti_big_set(&r, m, up + 1 + narrow);
    tti_big_set(&s, 1, down + 1 + narrow);
    tti_big_set(&above, 1, up + narrow);
    tti_big_set(&below, 1, up);
    tti_big_power(&s, k);
    tti_big_power(&r, -k);
    tti_big_power(&above, -k);
    tti_big_power(&below, -k);
    sum = r;
    tti_big_add(&sum, &above, 1);
    if (tti_big_compare(&sum, &s) > -even) { k++; tti_big_scale(&s, 10, 0); }
    for (*point = k; ; n++) {
        tti_big_scale(&r, 10, 0);
        tti_big_scale(&above, 10, 0);
        tti_big_scale(&below, 10, 0);
        for (digit = 0; tti_big_compare(&r, &s) >= 0; digit++) { tti_big_add(&r, &s, -1); }
        sum = r;
        tti_big_add(&sum, &above, 1);
        low = tti_big_compare(&r, &below) < even;
        high = tti_big_compare(&sum, &s) > -even;
        digits[n] = (char)('0' + digit);
        if (low || high) { break; }
    }
    tti_big_scale(&r, 2, 0);
    low = low && (!high || tti_big_compare(&r, &s) + (digit & 1) <= 0);
    if (!low) { digits[n]++; }
    return n + 1;
}
/* The shortest decimal that reads back as value, of a double or a float; written as Python does, whole numbers without ".0". */
static size_t tti_number_text(char out[48], double value, int is_float) {
    int n, point, e, i, narrow, bits = is_float ? 24 : 53, lowest = is_float ? -149 : -1074;
    char digits[24], *at = out;
    uint64_t m;
    if (is_float) { value = (double)(float)value; }
    if (!isfinite(value)) { memcpy(out, "null", 4); return 4; }
    if (signbit(value)) { *at++ = '-'; value = -value; }
    if (!(value > 0)) { *at++ = '0'; return (size_t)(at - out); }
    m = (uint64_t)ldexp(frexp(value, &e), bits);
    e -= bits;
    if (e < lowest) { m >>= lowest - e; e = lowest; }
    narrow = m == (uint64_t)1 << (bits - 1) && e > lowest;
    n = tti_shortest(value, m, e, narrow, digits, &point);
    if (point < -3 || point > 16) {
        *at++ = digits[0];
        if (n > 1) { *at++ = '.'; }
        for (i = 1; i < n; i++) { *at++ = digits[i]; }
        return (size_t)(at - out) + (size_t)snprintf(at, 8, "e%c%02d", point < 1 ? '-' : '+', point < 1 ? 1 - point : point - 1);
    }
    if (point <= 0) { *at++ = '0'; *at++ = '.'; }
    for (i = point; i < 0; i++) { *at++ = '0'; }
    for (i = 0; i < n || i < point; i++) {
        if (i == point && i > 0) { *at++ = '.'; }
        *at++ = i < n ? digits[i] : '0';
    }
    return (size_t)(at - out);
}

/* ---- formats ----
 * printf's, but with a point in numbers whatever the locale, and with %r and %R (see tt_text_format). Writes what fits,
 * with a NUL, and returns how much there is, or -1 where the format is none. */
typedef struct tti_sink { char *out; size_t size, n; } tti_sink;
static void tti_sink_put(tti_sink *s, const char *bytes, size_t n) {
    size_t room = s->n + 1 < s->size ? s->size - 1 - s->n : 0;
    if (room) { memcpy(s->out + s->n, bytes, n < room ? n : room); }
    s->n += n;
}
/* Whatever printf has put between the digits of a number is the locale's point. */
static void tti_sink_point(tti_sink *s, size_t from) {
    size_t end = s->n < s->size ? s->n : s->size ? s->size - 1 : 0, to = from, at;
    if (end < from) { return; }
    for (at = from; at < end; at++) {
        char c = s->out[at];
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' || c == '-' || c == ' ') { s->out[to++] = c; }
        else if (to == from || s->out[to - 1] != '.') { s->out[to++] = '.'; }
    }
    s->n -= end - to;
}
static int tti_vformat(char *out, size_t size, const char *format, va_list list) {
    tti_sink s;
    s.out = out;
    s.size = size;
    s.n = 0;
    while (*format) {
        size_t plain = strcspn(format, "%"), length = 1, begin, room;
        char spec[48] = "%", *to;
        int wide = 0, n = 0;
        tti_sink_put(&s, format, plain);
        format += plain;
        if (!*format) { break; }
        for (format++; *format && strchr("-+ #0123456789.*", *format) && length < 24; format++) {
            if (*format != '*') { spec[length++] = *format; continue; }
            n = va_arg(list, int);
            if (n < 0 && spec[length - 1] == '.') { length--; continue; }      /* as if not given */
            length += (size_t)snprintf(spec + length, 12, "%d", n);
        }
        for (; *format && strchr("hlzjt", *format); format++) { wide = *format == 'l' && wide == 'l' ? 'L' : *format; }
        to = spec + length;
        begin = s.n;
        room = s.n < s.size ? s.size - s.n : 0;
        out = room ? s.out + s.n : NULL;
        switch (*format) {
        case '%': tti_sink_put(&s, "%", 1); n = 0; break;
        case 'd': case 'i': {
            long long value = wide == 'l' ? va_arg(list, long) : wide == 'L' ? va_arg(list, long long) : wide == 'j' ? (long long)va_arg(list, intmax_t) :
                              wide == 'z' || wide == 't' ? (long long)va_arg(list, ptrdiff_t) : va_arg(list, int);
            memcpy(to, "lld", 4);
            n = snprintf(out, room, spec, value);
            break;
        }
        case 'u': case 'x': case 'X': case 'o': {
            unsigned long long value = wide == 'l' ? va_arg(list, unsigned long) : wide == 'L' ? va_arg(list, unsigned long long) :
                                       wide == 'j' ? (unsigned long long)va_arg(list, uintmax_t) : wide == 'z' || wide == 't' ? (unsigned long long)va_arg(list, size_t) : va_arg(list, unsigned);
            to[0] = to[1] = 'l';
            to[2] = *format;
            n = snprintf(out, room, spec, value);
            break;
        }
        case 'e': case 'E': case 'f': case 'F': case 'g': case 'G':
            to[0] = *format;
            n = snprintf(out, room, spec, va_arg(list, double));
            break;
        case 'r': case 'R': {
            char number[48];
            tti_sink_put(&s, number, tti_number_text(number, va_arg(list, double), *format == 'R'));
            n = 0;
            break;
        }
        case 'c': to[0] = 'c'; n = snprintf(out, room, spec, va_arg(list, int)); break;
        case 's': to[0] = 's'; n = snprintf(out, room, spec, va_arg(list, const char *)); break;
        case 'p': to[0] = 'p'; n = snprintf(out, room, spec, va_arg(list, void *)); break;
        default: return -1;
        }
        if (n < 0) { return -1; }
        s.n += (size_t)n;
        if (n && strchr("eEfFgG", *format)) { tti_sink_point(&s, begin); }
        format++;
    }
    if (s.size) { s.out[s.n < s.size ? s.n : s.size - 1] = 0; }
    return s.n <= INT_MAX ? (int)s.n : -1;
}
static int tti_format(char *out, size_t size, const char *format, ...) {
    va_list list;
    int n;
    va_start(list, format);
    n = tti_vformat(out, size, format, list);
    va_end(list);
    return n;
}

/* ---- errors ---- */
TT_API const char *tt_status_name(tt_status status) {
#define TTI_STATUS_CASE(name, value, text) case name: return text;
    switch (status) { TT_STATUS_LIST(TTI_STATUS_CASE) case TT_STATUS_END_: break; }
#undef TTI_STATUS_CASE
    return "unknown status";
}

TT_API tt_status tt_fail(tt_context *ctx, tt_status status, const char *format, ...) {
    va_list list;
    if (!ctx || ctx->graph_error) { return status; }      /* the first cause stays */
    ctx->failed = NULL;
    va_start(list, format);
    if (tti_vformat(ctx->error, sizeof ctx->error, format, list) < 0) { tti_format(ctx->error, sizeof ctx->error, "bad format: %s", format); }
    va_end(list);
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
/* The end of a function that may be tried again, by its name: a success takes the sentence of its own failure away. */
static tt_status tti_tried(tt_context *ctx, const char *who, tt_status status) {
    if (ctx->graph_error) { return status; }
    if (status != TT_OK) { ctx->failed = who; }
    else if (ctx->failed && strcmp(ctx->failed, who) == 0) { tt_error_clear(ctx); }
    return status;
}
static void *tti_made(tt_context *ctx, const char *who, void *object) {
    tti_tried(ctx, who, object ? TT_OK : TT_ERR_ARG);
    return object;
}

/* The steps of a function that may fail one by one: the first failure goes to its label `done`, where it cleans up. */
#define TTI_TRY(call)                                \
    do {                                             \
        status = (call);                             \
        if (status != TT_OK) { goto done; }          \
    } while (0)

/* ---- memory ---- */
static int tti_mul_size(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > (size_t)PTRDIFF_MAX / b) { return 0; }
    *out = a * b;
    return 1;
}
/* Weights, caches and arenas are walked from end to end: large pages where the system gives them to those who ask. (Memory
 * that also begins at one is slower: everything would meet in the same sets of the caches.) */
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
static void tti_default_free(void *user, void *memory, size_t bytes) { (void)user; (void)bytes; free(memory); }

static void *tti_alloc_raw(tt_context *ctx, size_t bytes) {
    void *memory = ctx->allocator.alloc(ctx->allocator.user, bytes ? bytes : 1);
    if (!memory) {
        tt_fail(ctx, TT_ERR_MEM, "out of memory: %lu bytes wanted, %lu in use", (unsigned long)bytes, (unsigned long)ctx->current_bytes);
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
        tt_fail(ctx, TT_ERR_MEM, "out of memory: %lu x %lu bytes overflow", (unsigned long)count, (unsigned long)size);
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
    ctx->allocator.free(ctx->allocator.user, memory, bytes > 0 ? bytes : 1);
}
TT_API tt_memory tt_memory_get(const tt_context *ctx) {
    tt_memory m;
    m.current_bytes = ctx->current_bytes;
    m.peak_bytes = ctx->peak_bytes;
    return m;
}
/* Grows an array to hold at least `want` elements; on failure *array and *capacity stay as they are. */
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
static void tti_strfree(tt_context *ctx, char *text) { if (text) { tt_free(ctx, text, strlen(text) + 1, 1); } }

/* ---- the step's arena ---- */
static tti_chunk *tti_chunk_create(tt_context *ctx, const tti_arena *arena, size_t size) {
    tti_chunk *chunk = (tti_chunk *)tt_alloc(ctx, 1, sizeof *chunk);
    if (!chunk) { return NULL; }
    chunk->base = (char *)(arena->on_backend ? ctx->backend->alloc(ctx, size) : tti_alloc_raw(ctx, size));
    chunk->size = size;
    if (!chunk->base) { tt_free(ctx, chunk, 1, sizeof *chunk); return NULL; }
    return chunk;
}
static void tti_chunk_destroy(tt_context *ctx, const tti_arena *arena, tti_chunk *chunk) {
    if (arena->on_backend) { ctx->backend->free(ctx, chunk->base, chunk->size); }
    else { tt_free(ctx, chunk->base, chunk->size, 1); }
    tt_free(ctx, chunk, 1, sizeof *chunk);
}
/* Uninitialised bytes, aligned to TTI_ALIGN. */
static void *tti_arena_alloc(tt_context *ctx, tti_arena *arena, size_t bytes) {
    tti_chunk *chunk = arena->current;
    size_t begin = 0;
    if (bytes > (size_t)PTRDIFF_MAX / 4) { tt_fail(ctx, TT_ERR_MEM, "out of memory: %lu bytes in one step tensor", (unsigned long)bytes); return NULL; }
    for (; chunk; chunk = chunk->next) {
        size_t misfit = (size_t)((uintptr_t)(chunk->base + chunk->used) & (TTI_ALIGN - 1));
        begin = chunk->used + (misfit ? TTI_ALIGN - misfit : 0);
        if (begin + bytes <= chunk->size) { break; }
        if (!chunk->next) { chunk = NULL; break; }
        chunk->next->used = 0;
    }
    if (!chunk) {
        size_t size = bytes + TTI_ALIGN;
        size_t misfit;
        tti_chunk *last = arena->first;
        while (last && last->next) { last = last->next; }
        if (size < TTI_CHUNK) { size = TTI_CHUNK; }
        if (last && size < last->size * 2 && last->size < ((size_t)64 << 20)) { size = last->size * 2; }
        chunk = tti_chunk_create(ctx, arena, size);
        if (!chunk) { return NULL; }
        if (last) { last->next = chunk; } else { arena->first = chunk; }
        misfit = (size_t)((uintptr_t)chunk->base & (TTI_ALIGN - 1));
        begin = misfit ? TTI_ALIGN - misfit : 0;
    }
    arena->current = chunk;
    chunk->used = begin + bytes;
    return chunk->base + begin;
}
static tti_mark tti_arena_mark(const tti_arena *arena) {
    tti_mark mark;
    mark.chunk = arena->current;
    mark.used = arena->current ? arena->current->used : 0;
    return mark;
}
static void tti_arena_release(tti_arena *arena, tti_mark mark) {
    arena->current = mark.chunk ? mark.chunk : arena->first;
    if (arena->current) { arena->current->used = mark.used; }
}
static void tti_arena_destroy(tt_context *ctx, tti_arena *arena) {
    while (arena->first) {
        tti_chunk *next = arena->first->next;
        tti_chunk_destroy(ctx, arena, arena->first);
        arena->first = next;
    }
    arena->current = NULL;
}
/* Empties the arena. Several chunks become one that holds them all and an eighth more, so that a steady step allocates nothing
 * and one that grows a little does not begin on new memory each time: to map and clear it takes longer than to fill it. */
static void tti_arena_reset(tt_context *ctx, tti_arena *arena) {
    size_t total = 0;
    tti_chunk *chunk;
    if (arena->first && arena->first->next) {
        for (chunk = arena->first; chunk; chunk = chunk->next) { total += chunk->size; }
        tti_arena_destroy(ctx, arena);
        arena->first = tti_chunk_create(ctx, arena, total + total / 8);
    }
    if (arena->first) { arena->first->used = 0; }
    arena->current = arena->first;
}
/* Host memory of the step, zeroed. */
static void *tti_step_alloc(tt_context *ctx, size_t bytes) {
    void *memory = tti_arena_alloc(ctx, &ctx->host, bytes);
    if (memory) { memset(memory, 0, bytes); }
    return memory;
}

/* ---- threads ----
 * A context's team is the calling thread and n_threads - 1 workers, started when there is work for them. A job has n
 * parts; whoever is free takes the next one. Taking a part is one compare-and-swap on the number of parts left, and the
 * job's fields change only after all parts are done: so a worker that comes late finds nothing left or a part of the
 * next job, both right. The caller works too and waits only for parts that were taken: a worker that the system keeps
 * from running delays nobody. Who waits spins for TTI_SPIN_S, then sleeps. (An OpenMP team spins for milliseconds:
 * beside other busy programs it trained the demo's model many times slower, see bench/RESULTS.md.) */
#define TTI_MAX_THREADS 1024
typedef void (*tti_part_fn)(void *user, int part, int worker);    /* worker: 0 .. n_threads - 1, no two at once */

#ifdef TTI_TEAM
#define TTI_SPIN_S 40e-6
/* Older C libraries hold threads in a library of their own: a program linked without that one has one thread. Elsewhere the
 * names must not be weak: a static link takes no member of an archive for the sake of a weak one. */
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
    int left, done, stop;            /* parts to take, parts finished; these and the next line are atomic */
    int n_asleep, caller_asleep;
    int n_members, capacity, spins;
    tti_member *members;
    pthread_mutex_t mutex;
    pthread_cond_t work, finished;
} tti_team;
#define TTI_ATOMIC_GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define TTI_ATOMIC_SET(x, value) __atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)

static void tti_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
static void tti_team_work(tti_team *team, int worker) {
    int left = TTI_ATOMIC_GET(team->left);
    while (left > 0) {
        int n_parts;
        if (!__atomic_compare_exchange_n(&team->left, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { continue; }
        n_parts = team->n_parts;
        team->part(team->user, n_parts - left, worker);
        if (__atomic_add_fetch(&team->done, 1, __ATOMIC_SEQ_CST) == n_parts && TTI_ATOMIC_GET(team->caller_asleep)) {
            pthread_mutex_lock(&team->mutex);
            pthread_cond_signal(&team->finished);
            pthread_mutex_unlock(&team->mutex);
        }
        left = TTI_ATOMIC_GET(team->left);
    }
}
static void *tti_team_member(void *user) {
    tti_member *me = (tti_member *)user;
    tti_team *team = me->team;
    while (!TTI_ATOMIC_GET(team->stop)) {
        int spins = team->spins;
        tti_team_work(team, me->worker);
        while (spins-- > 0 && TTI_ATOMIC_GET(team->left) == 0 && !TTI_ATOMIC_GET(team->stop)) { tti_pause(); }
        if (TTI_ATOMIC_GET(team->left) > 0) { continue; }
        pthread_mutex_lock(&team->mutex);
        __atomic_add_fetch(&team->n_asleep, 1, __ATOMIC_SEQ_CST);
        while (TTI_ATOMIC_GET(team->left) == 0 && !TTI_ATOMIC_GET(team->stop)) { pthread_cond_wait(&team->work, &team->mutex); }
        __atomic_sub_fetch(&team->n_asleep, 1, __ATOMIC_SEQ_CST);
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
static tt_status tti_team_create(tt_context *ctx) {
    tti_team *team = (tti_team *)tt_alloc(ctx, 1, sizeof *team);
    if (!team) { return TT_ERR_MEM; }
    team->capacity = ctx->n_threads - 1;
    team->members = (tti_member *)tt_alloc(ctx, (size_t)team->capacity, sizeof *team->members);
    if (!team->members) { tt_free(ctx, team, 1, sizeof *team); return TT_ERR_MEM; }
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
    pthread_mutex_lock(&team->mutex);
    TTI_ATOMIC_SET(team->stop, 1);
    pthread_cond_broadcast(&team->work);
    pthread_mutex_unlock(&team->mutex);
    for (i = 0; i < team->n_members; i++) { pthread_join(team->members[i].thread, NULL); }
    pthread_cond_destroy(&team->finished);
    pthread_cond_destroy(&team->work);
    pthread_mutex_destroy(&team->mutex);
    tt_free(ctx, team->members, (size_t)team->capacity, sizeof *team->members);
    tt_free(ctx, team, 1, sizeof *team);
    ctx->team = NULL;
}
static void tti_team_run(tti_team *team, tti_part_fn part, void *user, int n) {
    int spins = team->spins;
    team->part = part;
    team->user = user;
    team->n_parts = n;
    TTI_ATOMIC_SET(team->done, 0);
    TTI_ATOMIC_SET(team->left, n);
    if (TTI_ATOMIC_GET(team->n_asleep) > 0) {
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->work);
        pthread_mutex_unlock(&team->mutex);
    }
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

/* part(user, i, worker) for i = 0 .. n-1, each once, in any order, on any of the threads; returns when all are done. */
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
/* tti_grow for parts of a job, which may want memory at the same time. */
static tt_status tti_grow_shared(tt_context *ctx, void **array, size_t *capacity, size_t want, size_t size) {
    tt_status status;
#ifdef TTI_TEAM
    if (ctx->team) { pthread_mutex_lock(&ctx->team->mutex); }
    status = tti_grow(ctx, array, capacity, want, size);
    if (ctx->team) { pthread_mutex_unlock(&ctx->team->mutex); }
#else
#ifdef TTI_OPENMP
#pragma omp critical(tti_memory)
#endif
    status = tti_grow(ctx, array, capacity, want, size);
#endif
    return status;
}
/* One thread per processor, or as many as OMP_NUM_THREADS says, which other libraries heed too. */
static int tti_default_threads(void) {
    long n = 1;
#ifdef TTI_TEAM
    const char *wish = getenv("OMP_NUM_THREADS");
#ifdef _SC_NPROCESSORS_ONLN
    n = sysconf(_SC_NPROCESSORS_ONLN);
#endif
    if (wish && strtol(wish, NULL, 10) > 0) { n = strtol(wish, NULL, 10); }
#elif defined(TTI_OPENMP)
    n = omp_get_max_threads();
#endif
    return n < 1 ? 1 : n > TTI_MAX_THREADS ? TTI_MAX_THREADS : (int)n;
}

/* ---- context ---- */
/* Where desc names no backend: NULL is the CPU. */
static tt_status tti_default_backend(tt_context *ctx, const tt_backend **backend) {
    const char *wish = NULL;
#ifdef TT_CUDA
    wish = getenv("TT_BACKEND");
    if (wish && strcmp(wish, "cuda") == 0) { *backend = tt_cuda_backend(0); return TT_OK; }
#endif
    *backend = NULL;
    return !wish || !wish[0] || strcmp(wish, "cpu") == 0 ? TT_OK : tt_fail(ctx, TT_ERR_ARG, "tt_create: TT_BACKEND is \"%s\", expected cpu or cuda", wish);
}
TT_API tt_context *tt_create(const tt_desc *desc) {
    static const tt_desc zero = TT_INIT;
    const tt_backend *backend;
    tt_allocator allocator;
    tt_context *ctx;
    const char *wish;
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
    ctx->log = desc->log;
    ctx->log_user = desc->log_user;
    ctx->n_threads = desc->n_threads > 0 ? desc->n_threads : tti_default_threads();
    ctx->device.on_backend = 1;
    wish = desc->kernel ? desc->kernel : getenv("TT_KERNEL");
    if (wish) { snprintf(ctx->kernel_wish, sizeof ctx->kernel_wish, "%s", wish); }
    wish = desc->matmul ? desc->matmul : getenv("TT_MATMUL");
    if (wish) { snprintf(ctx->matmul_wish, sizeof ctx->matmul_wish, "%s", wish); }
    ctx->kernel_name = "none";
    if (desc->n_threads < 0 || desc->n_threads > TTI_MAX_THREADS) {
        ctx->broken = tt_fail(ctx, TT_ERR_ARG, "tt_create: n_threads is %d, expected 0 .. %d", desc->n_threads, TTI_MAX_THREADS);
        ctx->n_threads = 1;
    }
#ifdef TTI_TEAM
    if (!TTI_THREADS_LINKED) { ctx->n_threads = 1; }
#endif
    if (ctx->broken == TT_OK) { ctx->broken = tt_cpu_backend()->open(ctx, tt_cpu_backend(), &ctx->cpu_state); }
    ctx->backend = tt_cpu_backend();
    ctx->backend_state = ctx->cpu_state;
    backend = desc->backend;
    if (ctx->broken == TT_OK && !backend) { ctx->broken = tti_default_backend(ctx, &backend); }
    if (ctx->broken == TT_OK && backend && backend != ctx->backend) {
        ctx->backend = backend;
        ctx->backend_state = NULL;
        ctx->broken = ctx->backend->open(ctx, ctx->backend, &ctx->backend_state);
    }
    if (ctx->broken == TT_ERR_MEM) { tt_destroy(ctx); return NULL; }
    ctx->graph_error = ctx->broken != TT_OK;
    return ctx;
}
TT_API void tt_destroy(tt_context *ctx) {
    if (!ctx) { return; }
    if (ctx->backend) {
        tti_arena_destroy(ctx, &ctx->device);
        tti_arena_destroy(ctx, &ctx->host);
        if (ctx->backend_state && ctx->backend_state != ctx->cpu_state) { ctx->backend->close(ctx, ctx->backend_state); }
    }
    tti_team_destroy(ctx);
    if (ctx->cpu_state) { tt_cpu_backend()->close(ctx, ctx->cpu_state); }
    ctx->allocator.free(ctx->allocator.user, ctx, sizeof *ctx);
}
TT_API int tt_threads(const tt_context *ctx) { return ctx->n_threads; }
TT_API const char *tt_kernel(const tt_context *ctx) { return ctx->kernel_name; }
TT_API const tt_backend *tt_backend_get(const tt_context *ctx) { return ctx->backend; }
TT_API void *tt_backend_state(const tt_context *ctx) { return ctx->backend_state; }
TT_API double tt_clock(void) {
#if defined(TTI_POSIX) && defined(CLOCK_MONOTONIC)
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t) == 0) { return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec; }
#endif
    return (double)time(NULL);
}

/* ---- random numbers: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" ----
 * key = seed, counter = (index, stream); the first 64 of the 128 bits are used. */
static uint64_t tti_philox(const uint32_t counter[4], uint64_t key) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    int round;
    for (round = 0; round < 10; round++) {
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
TT_API uint64_t tt_random(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t counter[4];
    counter[0] = (uint32_t)index;
    counter[1] = (uint32_t)(index >> 32);
    counter[2] = (uint32_t)stream;
    counter[3] = (uint32_t)(stream >> 32);
    return tti_philox(counter, seed);
}
TT_API uint64_t tt_rng_next(tt_rng *rng) { return tt_random(rng->seed, rng->stream, rng->index++); }
static double tti_unit(uint64_t bits) { return (double)(bits >> 11) * (1.0 / 9007199254740992.0); }
TT_API double tt_rng_uniform(tt_rng *rng) { return tti_unit(tt_rng_next(rng)); }
TT_API double tt_rng_normal(tt_rng *rng) {
    double u = 1.0 - tt_rng_uniform(rng), angle = 6.283185307179586 * tt_rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(angle);
}
TT_API int tt_rng_below(tt_rng *rng, int n) { return (int)(((tt_rng_next(rng) >> 32) * (uint64_t)n) >> 32); }
/* FNV-1a with a final mix (splitmix64). */
TT_API uint64_t tt_hash(const void *bytes, size_t size, uint64_t seed) {
    const unsigned char *b = (const unsigned char *)bytes;
    uint64_t h = 0xCBF29CE484222325u ^ seed;
    size_t i;
    for (i = 0; i < size; i++) { h = (h ^ b[i]) * 0x100000001B3u; }
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
}

static int tti_is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

/* ---- text and ids ---- */
static tt_status tti_text_reserve(tt_text *text, size_t more) {
    void *data = text->data;
    tt_status status;
    if (more > (size_t)PTRDIFF_MAX - text->size - 1) { return tt_fail(text->ctx, TT_ERR_MEM, "out of memory: text of %lu more bytes", (unsigned long)more); }
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
TT_API tt_status tt_text_vformat(tt_text *text, const char *format, va_list list) {
    va_list again;
    int n;
    tt_status status;
    va_copy(again, list);
    n = tti_vformat(NULL, 0, format, again);
    va_end(again);
    if (n < 0) { return tt_fail(text->ctx, TT_ERR_ARG, "tt_text_format: bad format \"%s\"", format); }
    status = tti_text_reserve(text, (size_t)n);
    if (status != TT_OK) { return status; }
    n = tti_vformat(text->data + text->size, (size_t)n + 1, format, list);
    text->size += (size_t)n;
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
    tt_status status = tt_text_append(text, "\"", 1);
    for (i = 0; i < size && status == TT_OK; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\') { status = tt_text_format(text, "\\%c", c); }
        else if (c == '\n') { status = tt_text_append(text, "\\n", 2); }
        else if (c < 0x20) { status = tt_text_format(text, "\\u%04x", c); }
        else { status = tt_text_append(text, bytes + i, 1); }
    }
    if (status == TT_OK) { status = tt_text_append(text, "\"", 1); }
    if (status != TT_OK && text->data) { text->size = before; text->data[before] = 0; }
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
    if (n > (size_t)PTRDIFF_MAX / 4 - ids->size) { return tt_fail(ids->ctx, TT_ERR_MEM, "out of memory: %lu more ids", (unsigned long)n); }
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

/* ---- files ---- */
#if defined(TTI_POSIX)
#ifndef O_NOFOLLOW
#define O_NOFOLLOW 0        /* O_EXCL alone does not follow either */
#endif
#ifndef O_CLOEXEC
#define O_CLOEXEC 0
#endif
static const char *tti_mode_name(unsigned mode) {
    return S_ISREG(mode) ? NULL : S_ISDIR(mode) ? "a folder" : S_ISLNK(mode) ? "a symbolic link" : S_ISFIFO(mode) ? "a pipe" : "a device";
}
#elif defined(_WIN32)
static const char *tti_mode_name(unsigned mode) {
    return (mode & _S_IFMT) == _S_IFREG ? NULL : (mode & _S_IFMT) == _S_IFDIR ? "a folder" : "a device";
}
#endif
/* What stands at path and is no regular file, a link as what it is itself; NULL if there is nothing. *mode: the
 * permissions of a regular file, else those of a new one. */
static const char *tti_obstacle(const char *path, unsigned *mode) {
    *mode = 0666;
#if defined(TTI_POSIX)
    {
        struct stat info;
        if (lstat(path, &info) != 0) { return NULL; }
        if (S_ISREG(info.st_mode)) { *mode = info.st_mode & 0777; }
        return tti_mode_name(info.st_mode);
    }
#elif defined(_WIN32)
    {
        struct _stat info;
        return _stat(path, &info) == 0 ? tti_mode_name(info.st_mode) : NULL;
    }
#else
    (void)path;
    return NULL;
#endif
}
TT_API int tt_file_exists(const char *path) {
#if defined(TTI_POSIX)
    struct stat info;
    return stat(path, &info) == 0;
#elif defined(_WIN32)
    struct _stat info;
    return _stat(path, &info) == 0;
#else
    FILE *file = fopen(path, "rb");
    if (file) { fclose(file); }
    return file != NULL;
#endif
}
#ifdef TTI_POSIX
/* Opens a regular file to read it: a pipe would wait for its writer, a device might never end. -1 after an error. */
static int tti_file_descriptor(tt_context *ctx, const char *path, uint64_t *size) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    const char *what = NULL;
    if (fd >= 0 && fstat(fd, &info) == 0) {
        what = tti_mode_name(info.st_mode);
        *size = (uint64_t)info.st_size;
        if (!what) { return fd; }
    }
    if (what) { tt_fail(ctx, TT_ERR_IO, "cannot read %s: it is %s, expected a regular file", path, what); }
    else { tt_fail(ctx, TT_ERR_IO, "cannot read %s: %s", path, strerror(errno)); }
    if (fd >= 0) { close(fd); }
    return -1;
}
#endif
static tt_status tti_too_large(tt_context *ctx, const char *name) {
    return tt_fail(ctx, TT_ERR_IO, "cannot read %s: it is larger than TT_MAX_FILE_BYTES, %llu", name, (unsigned long long)TT_MAX_FILE_BYTES);
}
static FILE *tti_file_open(tt_context *ctx, const char *path) {
    FILE *file = NULL;
#if defined(TTI_POSIX)
    uint64_t size;
    int fd = tti_file_descriptor(ctx, path, &size);
    if (fd < 0) { return NULL; }
    if (size > TT_MAX_FILE_BYTES) { close(fd); tti_too_large(ctx, path); return NULL; }
    file = fdopen(fd, "rb");
    if (!file) { close(fd); }
#else
#if defined(_WIN32)
    struct _stat info;
    const char *what = _stat(path, &info) == 0 ? tti_mode_name(info.st_mode) : NULL;
    if (what) { tt_fail(ctx, TT_ERR_IO, "cannot read %s: it is %s, expected a regular file", path, what); return NULL; }
#endif
    file = fopen(path, "rb");
#endif
    if (!file) { tt_fail(ctx, TT_ERR_IO, "cannot read %s: %s", path, strerror(errno)); }
    return file;
}
TT_API tt_status tt_stream_read(tt_context *ctx, void *file, const char *name, tt_text *out) {
    char buffer[16384];
    uint64_t total = 0;
    size_t n;
    tt_status status = TT_OK;
    while (status == TT_OK && (n = fread(buffer, 1, sizeof buffer, (FILE *)file)) > 0) {
        total += n;
        status = total > TT_MAX_FILE_BYTES ? tti_too_large(ctx, name) : tt_text_append(out, buffer, n);
    }
    if (status == TT_OK && ferror((FILE *)file)) { status = tt_fail(ctx, TT_ERR_IO, "cannot read %s: %s", name, strerror(errno)); }
    return status == TT_OK ? tt_text_append(out, "", 0) : status;
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
/* A file being replaced: bytes go to a new file beside it, which takes the name PATH only when all of it is on disk. */
typedef struct tti_writer { tt_context *ctx; FILE *file; char *path, *temporary; } tti_writer;
/* Gives up: the temporary file goes, the old one stands. */
static void tti_writer_abort(tti_writer *w) {
    if (w->file) { fclose(w->file); w->file = NULL; }
    if (w->temporary) { remove(w->temporary); }
    tti_strfree(w->ctx, w->path);
    tti_strfree(w->ctx, w->temporary);
    w->path = w->temporary = NULL;
}
static tt_status tti_writer_fail(tti_writer *w, const char *what) {
    tt_fail(w->ctx, TT_ERR_IO, "cannot %s %s: %s", what, w->path ? w->path : "file", strerror(errno));
    tti_writer_abort(w);
    return TT_ERR_IO;
}
/* A new file: never one that is there, nor what a link points at. NULL with errno EEXIST if the name is taken. */
static FILE *tti_file_create(const char *path, unsigned mode) {
#if defined(TTI_POSIX)
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)mode);
    FILE *file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (fd >= 0 && !file) { close(fd); remove(path); }
    if (file && mode != 0666) { (void)fchmod(fd, (mode_t)mode); }
    return file;
#elif defined(_WIN32)
    int fd = _open(path, _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, _S_IREAD | _S_IWRITE);
    (void)mode;
    return fd >= 0 ? _fdopen(fd, "wb") : NULL;
#else
    (void)mode;
    return fopen(path, "wbx");
#endif
}
static tt_status tti_writer_open(tti_writer *w, tt_context *ctx, const char *path) {
    const char *slash = strrchr(path, '/'), *what;
    size_t n = slash ? (size_t)(slash + 1 - path) : 0;
    uint64_t clock[2];
    double now = tt_clock();
    unsigned mode;
    int i;
    memset(w, 0, sizeof *w);
    w->ctx = ctx;
    what = tti_obstacle(path, &mode);
    if (!*path) { return tt_fail(ctx, TT_ERR_IO, "cannot write: the path is empty"); }
    if (what) { return tt_fail(ctx, TT_ERR_IO, "cannot write %s: it is %s, expected a regular file or nothing", path, what); }
    w->path = tti_strdup(ctx, path);
    w->temporary = w->path ? (char *)tt_alloc(ctx, n + sizeof "tt-0123456789abcdef.tmp", 1) : NULL;
    if (!w->temporary) { tti_strfree(ctx, w->path); w->path = NULL; return TT_ERR_MEM; }
    memcpy(w->temporary, path, n);
    memcpy(clock, &now, sizeof now);
    clock[1] = (uint64_t)(uintptr_t)w;
    for (i = 0; i < 100 && !w->file; i++) {
        snprintf(w->temporary + n, sizeof "tt-0123456789abcdef.tmp", "tt-%016llx.tmp", (unsigned long long)tt_hash(clock, sizeof clock, (uint64_t)time(NULL) + (uint64_t)i));
        w->file = tti_file_create(w->temporary, mode);
        if (!w->file && errno != EEXIST) { break; }
    }
    if (w->file) { return TT_OK; }
    tti_strfree(ctx, w->temporary);          /* is not ours to remove */
    w->temporary = NULL;
    return tti_writer_fail(w, "create");
}
static tt_status tti_writer_write(tti_writer *w, const void *bytes, size_t size) {
    if (size && fwrite(bytes, 1, size, w->file) != size) { return tti_writer_fail(w, "write"); }
    return TT_OK;
}
/* The new name is on disk only when its folder is. */
static void tti_sync_parent(char *path) {
#ifdef TTI_POSIX
    char *slash = strrchr(path, '/');
    int fd;
    if (slash) { *slash = 0; }
    fd = open(!slash ? "." : slash == path ? "/" : path, O_RDONLY | O_CLOEXEC);
    if (slash) { *slash = '/'; }
    if (fd >= 0) { (void)fsync(fd); close(fd); }
#else
    (void)path;
#endif
}
static tt_status tti_writer_close(tti_writer *w) {
    int bad = fflush(w->file) != 0;
#ifdef TTI_POSIX
    bad = bad || fsync(fileno(w->file)) != 0;
#endif
    if (bad) { return tti_writer_fail(w, "write"); }
    bad = fclose(w->file) != 0;
    w->file = NULL;
    if (bad) { return tti_writer_fail(w, "write"); }
#ifdef _WIN32
    remove(w->path);
#endif
    if (rename(w->temporary, w->path) != 0) { return tti_writer_fail(w, "rename to"); }
    tti_sync_parent(w->path);
    tti_strfree(w->ctx, w->path);
    tti_strfree(w->ctx, w->temporary);
    return TT_OK;
}
TT_API tt_status tt_file_write(tt_context *ctx, const char *path, const void *bytes, size_t size) {
    tti_writer w;
    tt_status status = tti_writer_open(&w, ctx, path);
    if (status == TT_OK) { status = tti_writer_write(&w, bytes, size); }
    if (status == TT_OK) { status = tti_writer_close(&w); }
    return tti_tried(ctx, "tt_file_write", status);
}
TT_API tt_status tt_file_writable(tt_context *ctx, const char *path) {
    tti_writer w;
    tt_status status = tti_writer_open(&w, ctx, path);
    if (status == TT_OK) { tti_writer_abort(&w); }
    return status;
}
#if defined(_WIN32)
static int tti_mkdir(const char *path) { return _mkdir(path); }
#elif defined(TTI_POSIX)
static int tti_mkdir(const char *path) { return mkdir(path, 0777); }
#else
static int tti_mkdir(const char *path) { (void)path; errno = ENOENT; return -1; }
#endif
static int tti_is_folder(const char *path) {
#if defined(TTI_POSIX)
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
#elif defined(_WIN32)
    struct _stat info;
    return _stat(path, &info) == 0 && (info.st_mode & _S_IFMT) == _S_IFDIR;
#else
    (void)path;
    return 1;
#endif
}
TT_API tt_status tt_make_dirs(tt_context *ctx, const char *path) {
    char *copy = tti_strdup(ctx, path), *c;
    tt_status status = TT_OK;
    if (!copy) { return TT_ERR_MEM; }
    if (!*path) { status = tt_fail(ctx, TT_ERR_IO, "cannot create a directory: the path is empty"); }
    for (c = copy + 1; status == TT_OK; c++) {
        char was = *c;
        if (was != '/' && was != 0) { continue; }
        *c = 0;
        if (tti_mkdir(copy) != 0) {
            if (errno != EEXIST) { status = tt_fail(ctx, TT_ERR_IO, "cannot create directory %s: %s", copy, strerror(errno)); }
            else if (!tti_is_folder(copy)) { status = tt_fail(ctx, TT_ERR_IO, "cannot create directory %s: something else has this name", copy); }
        }
        *c = was;
        if (was == 0) { break; }
    }
    tti_strfree(ctx, copy);
    return tti_tried(ctx, "tt_make_dirs", status);
}

/* ---- JSON ---- 
 * Two passes over the text with the same parser: the first counts nodes and string bytes, the second
 * fills one block laid out as [header][nodes][strings]. */
#define TTI_JSON_MAX_VALUES ((size_t)1 << 23)
typedef struct tti_json_block { size_t bytes, padding; tt_json root; } tti_json_block;
typedef struct tti_json_parser {
    tt_context *ctx;
    const char *text, *at, *end;
    tt_json *nodes;        /* NULL in the counting pass */
    char *strings;
    size_t n_nodes, n_bytes;
    int failed;
} tti_json_parser;

static void tti_json_fail(tti_json_parser *p, const char *what) {
    int line = 1, column = 1;
    const char *c;
    if (p->failed) { return; }
    p->failed = 1;
    for (c = p->text; c < p->at && c < p->end; c++) {
        if (*c == '\n') { line++; column = 1; } else { column++; }
    }
    tt_fail(p->ctx, TT_ERR_FILE, "JSON line %d column %d: %s", line, column, what);
}
static void tti_json_space(tti_json_parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r')) { p->at++; }
}
static void tti_json_put(tti_json_parser *p, uint32_t c) {
    if (p->strings) { p->strings[p->n_bytes] = (char)(unsigned char)c; }
    p->n_bytes++;
}
static void tti_json_put_utf8(tti_json_parser *p, uint32_t c) {
    if (c < 0x80) { tti_json_put(p, c); return; }
    if (c < 0x800) { tti_json_put(p, 0xC0 | (c >> 6)); }
    else {
        if (c < 0x10000) { tti_json_put(p, 0xE0 | (c >> 12)); }
        else { tti_json_put(p, 0xF0 | (c >> 18)); tti_json_put(p, 0x80 | ((c >> 12) & 63)); }
        tti_json_put(p, 0x80 | ((c >> 6) & 63));
    }
    tti_json_put(p, 0x80 | (c & 63));
}
static int tti_json_hex4(tti_json_parser *p, uint32_t *out) {
    int i;
    *out = 0;
    if (p->end - p->at < 4) { return 0; }
    for (i = 0; i < 4; i++) {
        char c = *p->at++;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) { return 0; }
        *out = *out * 16 + (uint32_t)digit;
    }
    return 1;
}
static void tti_json_escape(tti_json_parser *p) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found;
    uint32_t c, low;
    if (p->at >= p->end) { tti_json_fail(p, "text ends within a string"); return; }
    if (*p->at != 'u') {
        found = *p->at ? strchr(from, *p->at) : NULL;
        if (!found) { tti_json_fail(p, "unknown escape in a string"); return; }
        tti_json_put(p, (unsigned char)to[found - from]);
        p->at++;
        return;
    }
    p->at++;
    if (!tti_json_hex4(p, &c)) { tti_json_fail(p, "\\u wants four hexadecimal digits"); return; }
    if (c >= 0xD800 && c < 0xDC00 && p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u') {
        const char *before = p->at;
        p->at += 2;
        if (tti_json_hex4(p, &low) && low >= 0xDC00 && low < 0xE000) { c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00); }
        else { p->at = before; }
    }
    tti_json_put_utf8(p, c >= 0xD800 && c < 0xE000 ? 0xFFFD : c);
}
static const char *tti_json_string(tti_json_parser *p, size_t *length) {
    size_t begin = p->n_bytes;
    p->at++;
    while (!p->failed) {
        if (p->at >= p->end) { tti_json_fail(p, "text ends within a string"); break; }
        if (*p->at == '"') { p->at++; break; }
        if ((unsigned char)*p->at < 0x20) { tti_json_fail(p, "control character in a string"); break; }
        if (*p->at == '\\') { p->at++; tti_json_escape(p); }
        else { tti_json_put(p, (unsigned char)*p->at++); }
    }
    *length = p->n_bytes - begin;
    tti_json_put(p, 0);
    return p->strings ? p->strings + begin : NULL;
}
/* The characters stay beside the number: more digits than a double has are not lost. */
static void tti_json_scan_number(tti_json_parser *p, tt_json *node) {
    const char *c = p->at;
    size_t begin = p->n_bytes;
#define TTI_DIGITS() while (c < p->end && *c >= '0' && *c <= '9') { c++; }
    if (c < p->end && *c == '-') { c++; }
    if (c < p->end && *c == '0') { c++; }
    else if (c < p->end && *c >= '1' && *c <= '9') { TTI_DIGITS() }
    else { tti_json_fail(p, "expected a value"); return; }
    if (c < p->end && *c == '.') {
        c++;
        if (c >= p->end || *c < '0' || *c > '9') { tti_json_fail(p, "digits missing after the decimal point"); return; }
        TTI_DIGITS()
    }
    if (c < p->end && (*c == 'e' || *c == 'E')) {
        c++;
        if (c < p->end && (*c == '+' || *c == '-')) { c++; }
        if (c >= p->end || *c < '0' || *c > '9') { tti_json_fail(p, "digits missing in the exponent"); return; }
        TTI_DIGITS()
    }
#undef TTI_DIGITS
    node->length = (size_t)(c - p->at);
    if (p->strings) {
        tt_number_read(p->at, node->length, &node->number);
        memcpy(p->strings + begin, p->at, node->length);
        node->string = p->strings + begin;
    }
    p->n_bytes += node->length;
    tti_json_put(p, 0);
    p->at = c;
}
static int tti_json_word(tti_json_parser *p, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(p->end - p->at) < n || memcmp(p->at, word, n) != 0) { return 0; }
    p->at += n;
    return 1;
}
static tt_json *tti_json_value(tti_json_parser *p, int depth);

static void tti_json_members(tti_json_parser *p, tt_json *node, int is_object, int depth) {
    tt_json *last = NULL;
    char close = is_object ? '}' : ']';
    p->at++;
    tti_json_space(p);
    if (p->at < p->end && *p->at == close) { p->at++; return; }
    while (!p->failed) {
        const char *key = NULL;
        size_t key_length = 0;
        tt_json *value;
        tti_json_space(p);
        if (is_object) {
            if (p->at >= p->end || *p->at != '"') { tti_json_fail(p, "expected a \"name\""); return; }
            key = tti_json_string(p, &key_length);
            tti_json_space(p);
            if (p->at >= p->end || *p->at != ':') { tti_json_fail(p, "expected ':'"); return; }
            p->at++;
        }
        value = tti_json_value(p, depth + 1);
        if (value) {
            value->key = key;
            value->key_length = key_length;
            if (last) { last->next = value; } else { node->child = value; }
            last = value;
            node->length++;
        }
        tti_json_space(p);
        if (p->at < p->end && *p->at == ',') { p->at++; continue; }
        if (p->at < p->end && *p->at == close) { p->at++; return; }
        tti_json_fail(p, is_object ? "expected ',' or '}'" : "expected ',' or ']'");
    }
}
static tt_json *tti_json_value(tti_json_parser *p, int depth) {
    size_t index = p->n_nodes++;
    tt_json counting, *node = p->nodes ? p->nodes + index : &counting;
    memset(node, 0, sizeof *node);
    if (depth > 128) { tti_json_fail(p, "nested deeper than 128"); return NULL; }
    if (index >= TTI_JSON_MAX_VALUES) { tti_json_fail(p, "more than 8388608 values"); return NULL; }
    tti_json_space(p);
    if (p->at >= p->end) { tti_json_fail(p, "text ends where a value is expected"); return NULL; }
    if (*p->at == '{') { node->type = TT_JSON_OBJECT; tti_json_members(p, node, 1, depth); }
    else if (*p->at == '[') { node->type = TT_JSON_ARRAY; tti_json_members(p, node, 0, depth); }
    else if (*p->at == '"') { node->type = TT_JSON_STRING; node->string = tti_json_string(p, &node->length); }
    else if (tti_json_word(p, "true")) { node->type = TT_JSON_BOOL; node->number = 1; }
    else if (tti_json_word(p, "false")) { node->type = TT_JSON_BOOL; }
    else if (tti_json_word(p, "null")) { node->type = TT_JSON_NULL; }
    else { node->type = TT_JSON_NUMBER; tti_json_scan_number(p, node); }
    return p->nodes ? p->nodes + index : NULL;
}
static void tti_json_document(tti_json_parser *p) {
    tti_json_value(p, 0);
    tti_json_space(p);
    if (!p->failed && p->at != p->end) { tti_json_fail(p, "text goes on after the value"); }
}
static tt_json *tti_json_read(tt_context *ctx, const char *text, size_t size) {
    tti_json_parser count, fill;
    tti_json_block *block;
    size_t bytes;
    memset(&count, 0, sizeof count);
    count.ctx = ctx;
    count.text = count.at = text;
    count.end = text + size;
    fill = count;
    tti_json_document(&count);
    if (count.failed) { return NULL; }
    if (!tti_mul_size(count.n_nodes, sizeof(tt_json), &bytes)) { tt_fail(ctx, TT_ERR_MEM, "out of memory: JSON text too large"); return NULL; }
    bytes += sizeof *block + count.n_bytes;
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
    return member && (member->type == TT_JSON_NUMBER || member->type == TT_JSON_BOOL) ? member->number : fallback;
}
/* 1 if node is a whole number in 0..most (and 2^53): the one way from a number of a file to an integer. */
static int tti_json_whole(const tt_json *node, uint64_t most, uint64_t *out) {
    if (!node || node->type != TT_JSON_NUMBER || !(node->number >= 0 && node->number <= 9007199254740992.0) || floor(node->number) != node->number) { return 0; }
    *out = (uint64_t)node->number;
    return *out <= most;
}
TT_API int tt_json_int(const tt_json *object, const char *key, int fallback) {
    uint64_t value;
    return tti_json_whole(tt_json_get(object, key), INT_MAX, &value) ? (int)value : fallback;
}

/* ---- JSON lines ---- */
/* Length of the UTF-8 character at `at` (at < end). What is no valid character is one byte with code point
 * UINT32_MAX, which is no letter, no number and no space. */
static size_t tti_utf8(const char *at, const char *end, uint32_t *c) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *b = (const unsigned char *)at;
    size_t size = b[0] < 0x80 ? 1 : b[0] >= 0xC2 && b[0] < 0xE0 ? 2 : (b[0] & 0xF0) == 0xE0 ? 3 : (b[0] & 0xF8) == 0xF0 ? 4 : 0;
    size_t i;
    *c = size == 1 ? b[0] : b[0] & (0x7Fu >> size);
    if (size > (size_t)(end - at)) { size = 0; }
    for (i = 1; i < size; i++) {
        if ((b[i] & 0xC0) != 0x80) { size = 0; break; }
        *c = (*c << 6) | (b[i] & 0x3Fu);
    }
    if (size == 0 || *c < least[size] || *c > 0x10FFFF || (*c >= 0xD800 && *c < 0xE000)) {
        *c = UINT32_MAX;
        return 1;
    }
    return size;
}
/* The first byte that belongs to no valid character; end if there is none. */
static const char *tti_utf8_invalid(const char *at, const char *end) {
    while (at < end) {
        uint32_t c;
        size_t size = tti_utf8(at, end, &c);
        if (c == UINT32_MAX) { break; }
        at += size;
    }
    return at;
}
TT_API tt_status tt_json_lines_open(tt_json_lines *lines, const char *path) {
    lines->text.ctx = lines->ctx;
    lines->name = path;
    return tt_file_read(lines->ctx, path, &lines->text);
}
TT_API void tt_json_lines_close(tt_json_lines *lines) { if (lines->text.ctx) { tt_text_free(&lines->text); } }
/* The first text with a NUL; its depth is that of the parser. */
static const tt_json *tti_json_find_nul(const tt_json *node) {
    const tt_json *found = NULL;
    if (node->type == TT_JSON_STRING) { return node->length && memchr(node->string, 0, node->length) ? node : NULL; }
    for (node = node->child; node && !found; node = node->next) { found = tti_json_find_nul(node); }
    return found;
}
TT_API tt_status tt_json_lines_next(tt_json_lines *lines, tt_json **value) {
    const tt_text *text = &lines->text;
    const tt_json *bad;
    const char *stray;
    char why[TTI_ERROR_SIZE];
    *value = NULL;
    if (lines->at == 0 && text->size >= 3 && memcmp(text->data, "\xef\xbb\xbf", 3) == 0) { lines->at = 3; }
    while (lines->at < text->size) {
        const char *begin = text->data + lines->at, *end = (const char *)memchr(begin, '\n', text->size - lines->at);
        size_t size = end ? (size_t)(end - begin) : text->size - lines->at;
        lines->at += size + (end != NULL);
        lines->line++;
        if (strspn(begin, " \t\r") >= size) { continue; }
        stray = tti_utf8_invalid(begin, begin + size);
        if (stray < begin + size) {
            return tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d column %lu: the byte 0x%02X is no UTF-8", lines->name,
                           lines->line, (unsigned long)(stray - begin) + 1, (unsigned)(unsigned char)*stray);
        }
        *value = tt_json_parse(lines->ctx, begin, size);
        if (!*value) {
            snprintf(why, sizeof why, "%s", tt_error(lines->ctx));
            return tt_fail(lines->ctx, tt_error_status(lines->ctx), "%s line %d: %s", lines->name, lines->line, why);
        }
        bad = tti_json_find_nul(*value);
        if (!bad) { return TT_OK; }
        tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d: \"%s\" has the character U+0000, expected text without it", lines->name, lines->line, bad->key ? bad->key : "a list");
        tt_json_free(lines->ctx, *value);
        *value = NULL;
        return TT_ERR_FILE;
    }
    return TT_OK;
}
/* What a value is, in words. */
static const char *tti_json_kind(const tt_json *node) {
    static const char *const kinds[] = {"null", "true or false", "a number", "a text", "a list", "an object"};
    return kinds[node->type];
}
TT_API tt_status tt_json_lines_text(const tt_json_lines *lines, const tt_json *value, const char *key, int numbers,
                                    const char **text) {
    const tt_json *node = tt_json_get(value, key);
    *text = NULL;
    if (value->type != TT_JSON_OBJECT) {
        return tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d: it is %s, expected an object", lines->name, lines->line,
                       tti_json_kind(value));
    }
    if (!node) { return TT_OK; }
    if (node->type != TT_JSON_STRING && (node->type != TT_JSON_NUMBER || !numbers)) {
        return tt_fail(lines->ctx, TT_ERR_FILE, "%s line %d: \"%s\" is %s, expected a text%s", lines->name, lines->line,
                       key, tti_json_kind(node), numbers ? " or a number" : "");
    }
    *text = node->string;
    return TT_OK;
}

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
#define TTI_KEYS ((size_t)96)            /* attention: keys in a block                          */
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
} tti_queries;

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
    const tti_kernels *sets[4];
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
    if (args->query_start || args->key_start || !args->lse) {
        return tt_fail(ctx, TT_ERR_ARG, "attention_backward: expected packed sequences and lse");
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
        tti_cpu_gemm, tti_cpu_gemm_panels,
        tti_cpu_attention_forward, tti_cpu_attention_backward, tti_cpu_key_tile, tti_cpu_store_keys,
        tti_cpu_logprobs_forward, tti_cpu_logprobs_backward,
        tti_cpu_gather_rows, tti_cpu_scatter_add_rows, tti_cpu_scatter_rows,
        tti_cpu_columns, tti_cpu_columns_backward,
        tti_cpu_rmsnorm, tti_cpu_rmsnorm_backward,
        tti_cpu_layernorm, tti_cpu_layernorm_backward, tti_cpu_rope,
        tti_cpu_unary, tti_cpu_unary_backward, tti_cpu_binary, tti_cpu_binary_backward,
        tti_cpu_where, tti_cpu_where_backward, tti_cpu_broadcast, tti_cpu_reduce, tti_cpu_bias_backward,
        tti_cpu_axpy, tti_cpu_sum_squares, tti_cpu_adamw, tti_cpu_cast,
        NULL,             /* sample: on the host        */
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

TT_API tt_tensor *tt_tensor_create(tt_context *ctx, tt_dtype dtype, int ndim, const int *shape,
                                   const char *name) {
    tt_tensor *t = tti_tensor_shell(ctx, dtype, ndim, shape, name);
    if (!t) { return NULL; }
    t->data = ctx->backend->alloc(ctx, tti_tensor_bytes(t));
    if (t->data && ctx->backend->zero(ctx, t->data, tti_tensor_bytes(t)) == TT_OK) { return t; }
    tt_tensor_destroy(t);
    return NULL;
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
 * next piece of one whose keys and values are kept; without, it begins at position 0. The cache has `stride`
 * rows for each slot: row slot * stride + position, of every layer. */

struct tt_kv_cache {
    tt_context *ctx;
    int n_layers, n_slots, capacity;
    int tile, stride;                         /* rows of a slot: capacity up to a multiple of the backend's
                                                 key_tile */
    int n_heads, width;                       /* num_key_value_heads; times head_dim */
    tt_tensor **keys, **values;               /* [n_layers] of [n_slots * stride, width] */
    int *lengths;                             /* [n_slots] */
};

/* ---- [tt:batch.cache] keys and values ---- */

/* Allocates keys and values of the layers whose shape the cache tells. */
static int tti_cache_fill(tt_kv_cache *cache) {
    tt_context *ctx = cache->ctx;
    int shape[2], i;
    shape[0] = cache->n_slots * cache->stride;
    shape[1] = cache->width;
    cache->keys = (tt_tensor **)tt_alloc(ctx, (size_t)cache->n_layers, sizeof *cache->keys);
    cache->values = (tt_tensor **)tt_alloc(ctx, (size_t)cache->n_layers, sizeof *cache->values);
    cache->lengths = (int *)tt_alloc(ctx, (size_t)cache->n_slots, sizeof *cache->lengths);
    if (!cache->keys || !cache->values || !cache->lengths) { return 0; }
    for (i = 0; i < cache->n_layers; i++) {
        cache->keys[i] = tt_tensor_create(ctx, TT_F32, 2, shape, NULL);
        cache->values[i] = cache->keys[i] ? tt_tensor_create(ctx, TT_F32, 2, shape, NULL) : NULL;
        if (!cache->values[i]) { return 0; }
    }
    return 1;
}

/* sizes: n_layers, n_slots, capacity, n_heads and width of the cache; the rest of it is not read. */
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
    cache->stride = (capacity + cache->tile - 1) / cache->tile * cache->tile;
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

/* The backend may store keys in tiles of several rows, so whole tiles are copied. */
TT_API tt_status tt_kv_cache_share(tt_kv_cache *cache, int from_slot, int to_slot, int length) {
    tt_context *ctx = cache->ctx;
    size_t width = (size_t)cache->width, from = (size_t)from_slot * (size_t)cache->stride * width;
    size_t to = (size_t)to_slot * (size_t)cache->stride * width;
    size_t bytes = (size_t)((length + cache->tile - 1) / cache->tile * cache->tile) * width * sizeof(float);
    int i;
    if (!tti_cache_has(cache, from_slot) || !tti_cache_has(cache, to_slot)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_kv_cache_share: slots are %d and %d, expected 0..%d", from_slot,
                       to_slot, cache->n_slots - 1);
    }
    if (length < 0 || length > cache->lengths[from_slot]) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_kv_cache_share: length is %d, expected 0..%d", length,
                       cache->lengths[from_slot]);
    }
    for (i = 0; from_slot != to_slot && length > 0 && i < cache->n_layers; i++) {
        float *k = TT_F(cache->keys[i]), *v = TT_F(cache->values[i]);
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

/* Two blocks of the step hold all arrays; offsets and tokens are copied, so the caller's may go. */
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
        if (!tti_batch_place(ctx, desc, s, &a)) { return NULL; }
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
    if (desc->cache) {
        b->d_query_start = tti_step_ids(ctx, a.query_start, desc->n_sequences);
        b->d_key_start = tti_step_ids(ctx, a.key_start, desc->n_sequences);
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

/* A gradient buffer that waits for the next tensor of its size. */
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

/* What an op ends with: records a node whose outputs are made by node->out and out2, if a gradient can flow.
 * */
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

/* Memory for the gradient of a tensor that has none: its own for a parameter, else a spare or the arena's. */
static float *tti_grad_memory(tt_tensor *t) {
    tt_context *ctx = t->ctx;
    tti_spare **link = (tti_spare **)&ctx->spare_grads;
    float *data;
    if (t->persistent) { return (float *)ctx->backend->alloc(ctx, t->size * sizeof(float)); }
    while (*link && (*link)->size != t->size) { link = &(*link)->next; }
    if (!*link) { return (float *)tti_arena_alloc(ctx, &ctx->device, t->size * sizeof(float)); }
    data = (*link)->data;
    *link = (*link)->next;
    return data;
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
    tti_spare *spare;
    if (!t || !t->grad || t->retain_grad || t->persistent) { return; }
    spare = (tti_spare *)tti_step_alloc(ctx, sizeof *spare);
    if (!spare) {
        tti_graph_broken(ctx);
        return;
    }
    spare->data = t->grad;
    spare->size = t->size;
    spare->next = ctx->spare_grads;
    ctx->spare_grads = spare;
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

/* ---- [tt:autograd.elementary] one pair for all unary, one for all binary ops; the kernels hold the formulas
 * ---- */

/* P0, p1: bounds of clamp, factor of scale */
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
 * sums of dy. An activation that follows is made in the same pass, and is an op of its own on the way back.
 * */

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

/* g with the weight as b, whatever its precision, and with its panels, if tt_generate has made some. */
static tt_status tti_gemm_weight(tt_context *ctx, tt_gemm_args g, const tt_tensor *w) {
    g.b = TT_F(w);
    if (g.transpose_b == w->panels_transposed) { g.panels = w->panels; }
    if (w->dtype == TT_F32) { return ctx->backend->gemm(ctx, &g); }
    if (w->dtype != TT_BF16 || !ctx->backend->takes_half) { return tti_gemm_widened(ctx, &g, w); }
    g.half_b = (const uint16_t *)w->data;
    return ctx->backend->gemm(ctx, &g);
}

/* The gradients of x and w from that of their product. w_is_mk: w is stored [m,k] (linear), else [k,m]. */
static tt_status tti_factors_back(tt_context *ctx, int w_is_mk, tt_tensor *x, tt_tensor *w, const float *dy) {
    int n = tti_rows(x), k = tti_cols(x), m = w->shape[w_is_mk ? 0 : 1], fresh_x, fresh_w;
    float *dx = tti_grad(x, &fresh_x), *dw = tti_grad(w, &fresh_w);
    tt_status status = TT_OK;
    if (dx) {
        tti_view weight = tti_view_of(NULL, w_is_mk ? k : m, !w_is_mk);
        tt_gemm_args g = tti_gemm_args_of(n, k, m, tti_view_of(dy, m, 0), weight, dx);
        g.accumulate = !fresh_x;
        status = tti_gemm_weight(ctx, g, w);
    }
    if (dw && status == TT_OK) {
        tt_gemm_args g =
            w_is_mk ? tti_gemm_args_of(m, k, n, tti_view_of(dy, m, 1), tti_view_of(TT_F(x), k, 0), dw)
                    : tti_gemm_args_of(k, m, n, tti_view_of(TT_F(x), k, 1), tti_view_of(dy, m, 0), dw);
        g.accumulate = !fresh_w;
        status = ctx->backend->gemm(ctx, &g);
    }
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
    sum->node = NULL;
    sum->requires_grad = 0;
    k = tti_cols(x);
    g = tti_gemm_args_of(tti_rows(x), tti_cols(y), k, tti_view_of(TT_F(x), k, 0), tti_view_of(NULL, k, 1),
                         TT_F(y));
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
 * same kernel then reads the cache instead of k and v: one code for training, prefill and decode. */

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
    if (batch->cache) {
        a->query_start = batch->d_query_start;
        a->key_start = batch->d_key_start;
        a->key_tiles = ctx->backend->store_keys != NULL;
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

TT_API tt_tensor *tt_token_logprobs(tt_context *ctx, tt_tensor *x, tt_tensor *w, const int32_t *targets,
                                    float temperature, tt_tensor **entropy_out) {
    static const char *const who = "tt_token_logprobs";
    tt_tensor *in[2];
    tt_logprobs_args *a;
    tti_node op;
    int n;
    in[0] = x;
    in[1] = w;
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
 * Text becomes ids in four steps. 1. Added tokens (such as "<end>") are cut out of the text. 2. What lies between
 * them is normalized, if the file asks for it. 3. It is split into pieces, roughly words, by a pre-tokenizer. 4. Each
 * piece starts as one token per byte (or per character), and byte pair encoding (Sennrich et al. 2016) merges
 * neighbours: of all adjacent pairs that have a merge rule, the one with the lowest rank goes first, the leftmost if
 * it occurs twice, until no rule fits.
 *
 * A tokenizer is: the bytes of every token (a dictionary from bytes to id and a table from id to bytes), and the
 * merge rules (a hash map from a pair of ids to its rank). Nothing in it changes after it is made, but for the
 * workers: one per thread, each with scratch memory and a cache from pieces to their ids.
 * In the files of byte-level BPE a byte is written as one printable character, GPT-2's mapping; a token is a string
 * of them. SentencePiece's kind keeps characters, writes a space as U+2581, and has tokens <0x00> to <0xFF> for the
 * bytes of characters that it does not know. */

#define TTI_MAX_VOCAB (1 << 21)
#define TTI_SHORT_PIECE 48           /* symbols; up to here a plain search for the best pair beats a heap */
#define TTI_NOWHERE UINT32_MAX
#define TTI_SPACE_MARK "\xE2\x96\x81"    /* U+2581: a space in SentencePiece */

/* ---- dictionary: strings to numbers; open addressing, at most half full ---- */
typedef struct tti_word { uint64_t hash; size_t begin, size; int64_t value; } tti_word;
typedef struct tti_dict {
    tt_text bytes;                   /* of all words, end to end                                        */
    tti_word *words;
    size_t n, capacity;
    uint32_t *slots;                 /* word + 1; 0 = free                                              */
    size_t n_slots;                  /* a power of two                                                  */
} tti_dict;

static const char *tti_dict_bytes(const tti_dict *d, const tti_word *word) { return d->bytes.data + word->begin; }
static tti_word *tti_dict_find(const tti_dict *d, const char *bytes, size_t size) {
    uint64_t hash;
    size_t slot;
    if (d->n == 0) { return NULL; }
    hash = tt_hash(bytes, size, 0);
    for (slot = (size_t)hash & (d->n_slots - 1); d->slots[slot]; slot = (slot + 1) & (d->n_slots - 1)) {
        tti_word *word = &d->words[d->slots[slot] - 1];
        if (word->hash == hash && word->size == size && memcmp(tti_dict_bytes(d, word), bytes, size) == 0) { return word; }
    }
    return NULL;
}
static void tti_dict_place(tti_dict *d, uint32_t index) {
    size_t slot = (size_t)d->words[index].hash & (d->n_slots - 1);
    while (d->slots[slot]) { slot = (slot + 1) & (d->n_slots - 1); }
    d->slots[slot] = index + 1;
}
static tt_status tti_dict_widen(tti_dict *d) {
    size_t wider = d->n_slots ? d->n_slots * 2 : 64;
    uint32_t *slots, i;
    if (d->n >= (size_t)INT32_MAX) { return tt_fail(d->bytes.ctx, TT_ERR_MEM, "out of memory: more than %ld words", (long)INT32_MAX); }
    slots = (uint32_t *)tt_alloc(d->bytes.ctx, wider, sizeof *slots);
    if (!slots) { return TT_ERR_MEM; }
    tt_free(d->bytes.ctx, d->slots, d->n_slots, sizeof *slots);
    d->slots = slots;
    d->n_slots = wider;
    for (i = 0; i < (uint32_t)d->n; i++) { tti_dict_place(d, i); }
    return TT_OK;
}
/* Adds bytes that are not in the dictionary yet. NULL = out of memory, nothing changed. */
static tti_word *tti_dict_add(tti_dict *d, const char *bytes, size_t size, int64_t value) {
    void *words = d->words;
    tti_word *word;
    size_t begin = d->bytes.size;
    if ((d->n + 1) * 2 > d->n_slots && tti_dict_widen(d) != TT_OK) { return NULL; }
    if (tti_grow(d->bytes.ctx, &words, &d->capacity, d->n + 1, sizeof *word) != TT_OK) { return NULL; }
    d->words = (tti_word *)words;
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
    tt_context *ctx = d->bytes.ctx;
    tt_free(ctx, d->words, d->capacity, sizeof *d->words);
    tt_free(ctx, d->slots, d->n_slots, sizeof *d->slots);
    tt_text_free(&d->bytes);
}

/* ---- pair map: (left id, right id) to a number from 0 ---- */
typedef struct tti_pair_slot { int32_t left, right, value; } tti_pair_slot;      /* value + 1; 0 = free */
typedef struct tti_pair_map { tti_pair_slot *slots; size_t n, n_slots; } tti_pair_map;

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
static tt_status tti_pair_add(tt_context *ctx, tti_pair_map *map, int32_t left, int32_t right, int32_t value) {
    tti_pair_slot *slot;
    if ((map->n + 1) * 2 > map->n_slots) {
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
    }
    slot = tti_pair_slot_of(map, left, right);
    if (!slot->value) { map->n++; }
    slot->left = left;
    slot->right = right;
    slot->value = value + 1;
    return TT_OK;
}

/* ---- characters ---- */
static size_t tti_utf8_put(uint32_t c, char out[4]) {
    size_t size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;
    for (i = size - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 0x3F));
        c >>= 6;
    }
    out[0] = (char)(size == 1 ? c : c | (0xF00u >> size & 0xFF));
    return size;
}
/* Bytes at the end of the text that may be the beginning of a character. */
static size_t tti_utf8_open(const char *begin, const char *end) {
    const unsigned char *b = (const unsigned char *)end;
    size_t n, size;
    for (n = 1; n <= 3 && n <= (size_t)(end - begin); n++) {
        unsigned lead = *--b;
        if ((lead & 0xC0) == 0x80) { continue; }
        size = lead >= 0xC2 && lead < 0xE0 ? 2 : (lead & 0xF0) == 0xE0 ? 3 : lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
        if (size <= n) { return 0; }
        if (n == 1) { return 1; }
        if ((lead == 0xE0 && b[1] < 0xA0) || (lead == 0xED && b[1] > 0x9F) || (lead == 0xF0 && b[1] < 0x90) || (lead == 0xF4 && b[1] > 0x8F)) { return 0; }
        return n;
    }
    return 0;
}

/* Classes by general category: L* in three parts (UPPER is Lu and Lt), N*, M*, and the property White_Space. CASED
 * stands in the table only: capital and small letters in turn, beginning with a capital. */
enum { TTI_OTHER, TTI_LETTER, TTI_NUMBER, TTI_SPACE, TTI_UPPER, TTI_LOWER, TTI_MARK, TTI_CASED };
#define TTI_LETTERS ((1u << TTI_LETTER) | (1u << TTI_UPPER) | (1u << TTI_LOWER))     /* \p{L} as a set of classes */
#define TTI_SYMBOLS ((1u << TTI_OTHER) | (1u << TTI_MARK))                           /* [^\s\p{L}\p{N}]           */
#define TTI_SPACES (1u << TTI_SPACE)

/* Unicode 16.0.0, printed by tools/unicode_tables.py: first code point of a range * 8 + class. */
static const uint32_t tti_unicode[] = {
    0, 75, 112, 259, 264, 386, 464, 524, 728, 781, 984, 1067, 1072, 1283, 1288, 1361, 1368, 1426, 1440, 1453, 1456,
    1482, 1489, 1496, 1506, 1528, 1540, 1720, 1732, 1789, 1976, 1989, 2055, 2501, 2511, 2637, 2647, 3012, 3023, 3069,
    3084, 3095, 3124, 3141, 3148, 3173, 3188, 3221, 3228, 3245, 3252, 3277, 3300, 3317, 3324, 3335, 3380, 3391, 3421,
    3428, 3437, 3444, 3461, 3468, 3487, 3516, 3533, 3545, 3556, 3565, 3585, 3620, 3637, 3644, 3661, 3668, 3679, 3821,
    3831, 3973, 3980, 3991, 4020, 4039, 4517, 4564, 4581, 4588, 4605, 4620, 4629, 4636, 4663, 4741, 5281, 5293, 5505,
    5648, 5681, 5776, 5889, 5928, 5985, 5992, 6001, 6008, 6150, 7047, 7073, 7080, 7092, 7101, 7104, 7121, 7133, 7152,
    7164, 7168, 7220, 7224, 7236, 7256, 7268, 7272, 7284, 7301, 7308, 7440, 7452, 7525, 7804, 7813, 7828, 7853, 7879,
    8069, 8100, 8109, 8112, 8124, 8133, 8140, 8157, 8172, 8581, 8967, 9232, 9246, 9303, 9732, 9743, 9853, 9863, 10624,
    10636, 10936, 10953, 10960, 11013, 11336, 11406, 11760, 11774, 11776, 11790, 11800, 11814, 11824, 11838, 11840,
    11905, 12120, 12153, 12184, 12422, 12504, 12545, 12894, 13058, 13136, 13169, 13190, 13193, 13984, 13993, 14006,
    14056, 14078, 14121, 14142, 14152, 14166, 14193, 14210, 14289, 14312, 14329, 14336, 14465, 14478, 14481, 14726,
    14936, 14953, 15670, 15753, 15760, 15874, 15953, 16222, 16289, 16304, 16337, 16344, 16366, 16368, 16385, 16566,
    16593, 16606, 16673, 16686, 16705, 16718, 16752, 16897, 17102, 17120, 17153, 17240, 17281, 17472, 17481, 17528,
    17598, 17665, 18006, 18192, 18206, 18465, 18902, 18921, 18934, 19073, 19086, 19137, 19222, 19232, 19250, 19328,
    19337, 19470, 19488, 19497, 19560, 19577, 19592, 19609, 19784, 19793, 19848, 19857, 19864, 19889, 19920, 19942,
    19945, 19958, 20008, 20030, 20040, 20062, 20081, 20088, 20158, 20160, 20193, 20208, 20217, 20246, 20256, 20274,
    20353, 20368, 20386, 20432, 20449, 20456, 20470, 20472, 20494, 20512, 20521, 20568, 20601, 20616, 20633, 20808,
    20817, 20872, 20881, 20896, 20905, 20920, 20929, 20944, 20966, 20968, 20982, 21016, 21054, 21064, 21086, 21104,
    21134, 21136, 21193, 21224, 21233, 21240, 21298, 21382, 21393, 21422, 21424, 21518, 21536, 21545, 21616, 21625,
    21648, 21657, 21832, 21841, 21896, 21905, 21920, 21929, 21968, 21990, 21993, 22006, 22064, 22078, 22096, 22110,
    22128, 22145, 22152, 22273, 22294, 22304, 22322, 22400, 22473, 22486, 22528, 22542, 22560, 22569, 22632, 22649,
    22664, 22681, 22856, 22865, 22920, 22929, 22944, 22953, 22992, 23014, 23017, 23030, 23080, 23102, 23112, 23134,
    23152, 23214, 23232, 23265, 23280, 23289, 23318, 23328, 23346, 23424, 23433, 23442, 23488, 23574, 23577, 23584,
    23593, 23640, 23665, 23688, 23697, 23728, 23753, 23768, 23777, 23784, 23793, 23808, 23833, 23848, 23873, 23896,
    23921, 24016, 24054, 24088, 24118, 24136, 24150, 24176, 24193, 24200, 24254, 24256, 24370, 24472, 24582, 24617,
    24680, 24689, 24712, 24721, 24904, 24913, 25040, 25062, 25065, 25078, 25128, 25142, 25160, 25174, 25200, 25262,
    25272, 25281, 25304, 25321, 25328, 25345, 25366, 25376, 25394, 25472, 25538, 25592, 25601, 25614, 25632, 25641,
    25704, 25713, 25736, 25745, 25928, 25937, 26016, 26025, 26064, 26086, 26089, 26102, 26152, 26166, 26184, 26198,
    26224, 26286, 26296, 26345, 26360, 26369, 26390, 26400, 26418, 26496, 26505, 26526, 26528, 26630, 26657, 26728,
    26737, 26760, 26769, 27102, 27113, 27126, 27176, 27190, 27208, 27222, 27249, 27256, 27297, 27326, 27330, 27385,
    27414, 27424, 27442, 27592, 27601, 27648, 27662, 27680, 27689, 27832, 27857, 28048, 28057, 28128, 28137, 28144,
    28161, 28216, 28246, 28248, 28286, 28328, 28342, 28344, 28358, 28416, 28466, 28544, 28566, 28576, 28681, 29070,
    29073, 29094, 29144, 29185, 29246, 29304, 29314, 29392, 29705, 29720, 29729, 29736, 29745, 29784, 29793, 29984,
    29993, 30000, 30009, 30094, 30097, 30118, 30185, 30192, 30209, 30248, 30257, 30264, 30278, 30328, 30338, 30416,
    30433, 30464, 30721, 30728, 30918, 30928, 30978, 31136, 31150, 31152, 31166, 31168, 31182, 31184, 31222, 31233,
    31296, 31305, 31592, 31630, 31784, 31798, 31809, 31854, 31936, 31950, 32232, 32310, 32312, 32769, 33118, 33273,
    33282, 33360, 33409, 33462, 33489, 33526, 33545, 33558, 33577, 33598, 33649, 33678, 33705, 33814, 33905, 33918,
    33922, 34006, 34032, 34052, 34352, 34364, 34368, 34412, 34416, 34437, 34776, 34785, 34797, 34817, 37448, 37457,
    37488, 37505, 37560, 37569, 37576, 37585, 37616, 37633, 37960, 37969, 38000, 38017, 38280, 38289, 38320, 38337,
    38392, 38401, 38408, 38417, 38448, 38465, 38584, 38593, 39048, 39057, 39088, 39105, 39640, 39662, 39680, 39754,
    39912, 39937, 40064, 40196, 40880, 40901, 40944, 40969, 45928, 45945, 46083, 46089, 46296, 46337, 46936, 46962,
    46985, 47048, 47105, 47254, 47280, 47353, 47510, 47528, 47617, 47766, 47776, 47873, 47976, 47985, 48008, 48022,
    48032, 48129, 48550, 48800, 48825, 48832, 48865, 48878, 48880, 48898, 48976, 49026, 49104, 49246, 49264, 49278,
    49282, 49360, 49409, 50120, 50177, 50222, 50233, 50510, 50513, 50520, 50561, 51120, 51201, 51448, 51462, 51552,
    51590, 51680, 51762, 51841, 52080, 52097, 52136, 52225, 52576, 52609, 52816, 52866, 52952, 53249, 53438, 53472,
    53505, 53934, 54008, 54022, 54248, 54270, 54274, 54352, 54402, 54480, 54585, 54592, 54662, 54904, 55302, 55337,
    55718, 55849, 55912, 55938, 56016, 56158, 56224, 56326, 56345, 56590, 56689, 56706, 56785, 57142, 57248, 57345,
    57638, 57792, 57858, 57936, 57961, 57986, 58065, 58352, 58373, 58444, 58453, 58456, 58500, 58840, 58860, 58880,
    59014, 59032, 59046, 59209, 59246, 59249, 59302, 59305, 59326, 59345, 59352, 59397, 59745, 60253, 60353, 60365,
    60633, 60934, 61447, 62645, 62711, 63493, 63556, 63621, 63664, 63684, 63728, 63749, 63812, 63877, 63940, 64005,
    64048, 64068, 64112, 64133, 64192, 64204, 64208, 64220, 64224, 64236, 64240, 64252, 64261, 64324, 64389, 64496,
    64517, 64580, 64645, 64708, 64773, 64836, 64901, 64936, 64949, 64964, 65000, 65013, 65016, 65045, 65064, 65077,
    65092, 65128, 65157, 65184, 65205, 65220, 65248, 65285, 65348, 65384, 65429, 65448, 65461, 65476, 65512, 65539,
    65624, 65859, 65872, 65915, 65920, 66299, 66304, 66434, 66441, 66448, 66466, 66512, 66553, 66562, 66640, 66689,
    66792, 67206, 67464, 67604, 67608, 67644, 67648, 67669, 67676, 67701, 67716, 67741, 67744, 67756, 67760, 67788,
    67824, 67876, 67880, 67892, 67896, 67908, 67912, 67924, 67952, 67965, 67972, 68005, 68009, 68045, 68048, 68069,
    68084, 68096, 68140, 68149, 68176, 68213, 68216, 68226, 68636, 68645, 68650, 68688, 74498, 74976, 75602, 75776,
    80818, 81056, 90116, 90501, 90884, 90893, 90900, 90925, 90943, 90988, 91015, 91045, 91052, 91061, 91105, 91124,
    91143, 91941, 91944, 91999, 92030, 92052, 92061, 92064, 92138, 92144, 92165, 92464, 92477, 92480, 92525, 92528,
    92545, 92992, 93049, 93056, 93182, 93185, 93368, 93441, 93496, 93505, 93560, 93569, 93624, 93633, 93688, 93697,
    93752, 93761, 93816, 93825, 93880, 93889, 93944, 93958, 94208, 94585, 94592, 98307, 98312, 98345, 98362, 98368,
    98570, 98646, 98688, 98697, 98736, 98754, 98777, 98792, 98825, 99512, 99534, 99544, 99561, 99584, 99593, 100312,
    100321, 100352, 100393, 100736, 100745, 101496, 101522, 101552, 101633, 101888, 102273, 102400, 102658, 102736,
    102978, 103040, 103050, 103168, 103426, 103504, 103818, 103936, 106497, 159232, 159745, 337000, 337537, 337904,
    337921, 340072, 340097, 340226, 340305, 340320, 340487, 340849, 340862, 340888, 340902, 340976, 340985, 340999,
    341217, 341238, 341249, 341810, 341894, 341904, 342201, 342272, 342295, 342405, 342423, 342913, 342925, 342991,
    343020, 343031, 343105, 343112, 343135, 343161, 343175, 343205, 343223, 343380, 343421, 343428, 343463, 343588,
    343615, 343644, 343661, 343664, 343684, 343693, 343696, 343709, 343712, 343725, 343735, 343780, 343784, 343953,
    343980, 343989, 343993, 344021, 344025, 344086, 344089, 344118, 344121, 344158, 344161, 344350, 344384, 344422,
    344424, 344450, 344496, 344577, 344992, 345094, 345105, 345510, 345648, 345730, 345808, 345862, 346001, 346048,
    346073, 346080, 346089, 346110, 346114, 346193, 346422, 346480, 346497, 346686, 346784, 346881, 347112, 347142,
    347169, 347550, 347656, 347769, 347778, 347856, 347905, 347950, 347953, 348034, 348113, 348152, 348161, 348494,
    348600, 348673, 348702, 348705, 348774, 348784, 348802, 348880, 348929, 349112, 349137, 349150, 349169, 349574,
    349577, 349590, 349609, 349630, 349641, 349686, 349697, 349710, 349713, 349720, 349913, 349936, 349953, 350046,
    350080, 350097, 350126, 350136, 350217, 350264, 350281, 350328, 350345, 350392, 350465, 350520, 350529, 350584,
    350597, 350936, 350945, 350981, 351049, 351056, 351109, 351745, 352030, 352088, 352102, 352112, 352130, 352208,
    352257, 441632, 441729, 441912, 441945, 442336, 509953, 512880, 512897, 513744, 514053, 514104, 514205, 514240,
    514281, 514294, 514297, 514376, 514385, 514488, 514497, 514536, 514545, 514552, 514561, 514576, 514585, 514600,
    514609, 515472, 515737, 518640, 518785, 519296, 519313, 519744, 520065, 520160, 520198, 520320, 520454, 520576,
    521089, 521128, 521137, 522216, 522370, 522448, 522508, 522712, 522765, 522968, 523057, 523768, 523793, 523840,
    523857, 523904, 523921, 523968, 523985, 524008, 524289, 524384, 524393, 524600, 524609, 524760, 524769, 524784,
    524793, 524912, 524929, 525040, 525313, 526296, 526394, 526752, 526850, 527304, 527442, 527456, 528366, 528368,
    529409, 529640, 529665, 530056, 530182, 530186, 530400, 530433, 530690, 530720, 530793, 530954, 530961, 531026,
    531032, 531073, 531382, 531416, 531457, 531696, 531713, 532000, 532033, 532096, 532106, 532144, 532484, 532805,
    533121, 533744, 533762, 533840, 533892, 534176, 534213, 534496, 534529, 534848, 534913, 535328, 535428, 535512,
    535524, 535640, 535652, 535704, 535716, 535728, 535741, 535824, 535837, 535952, 535965, 536016, 536029, 536040,
    536065, 536480, 536577, 539064, 539137, 539312, 539393, 539456, 539649, 539696, 539705, 540040, 540049, 540120,
    540673, 540720, 540737, 540744, 540753, 541104, 541113, 541128, 541153, 541160, 541177, 541360, 541378, 541441,
    541624, 541642, 541697, 541944, 542010, 542080, 542465, 542616, 542625, 542640, 542682, 542721, 542898, 542944,
    542977, 543184, 543745, 544192, 544226, 544241, 544258, 544384, 544402, 544769, 544782, 544800, 544814, 544824,
    544870, 544897, 544928, 544937, 544960, 544969, 545200, 545222, 545240, 545278, 545282, 545352, 545537, 545770,
    545784, 545793, 546026, 546048, 546305, 546368, 546377, 546606, 546616, 546650, 546688, 546817, 547248, 547329,
    547504, 547522, 547585, 547736, 547778, 547841, 547984, 548170, 548224, 548865, 549448, 549892, 550296, 550405,
    550808, 550866, 550913, 551206, 551232, 551298, 551376, 551426, 551505, 551556, 551728, 551758, 551792, 551801,
    551813, 551984, 553730, 553976, 553985, 554320, 554334, 554344, 554369, 554384, 554513, 554536, 554982, 555009,
    555242, 555321, 555328, 555393, 555574, 555658, 555688, 555905, 556054, 556080, 556417, 556586, 556640, 556801,
    556984, 557062, 557081, 557510, 557624, 557714, 557958, 557961, 557982, 557993, 558000, 558078, 558105, 558470,
    558552, 558614, 558616, 558721, 558920, 558978, 559056, 559110, 559129, 559422, 559528, 559538, 559616, 559649,
    559662, 559673, 559680, 559745, 560030, 560032, 560049, 560056, 560134, 560153, 560542, 560649, 560680, 560718,
    560744, 560758, 560770, 560849, 560856, 560865, 560872, 560906, 561064, 561153, 561296, 561305, 561510, 561600,
    561654, 561657, 561678, 561680, 562177, 562232, 562241, 562248, 562257, 562288, 562297, 562416, 562425, 562504,
    562561, 562942, 563032, 563074, 563152, 563206, 563232, 563241, 563304, 563321, 563336, 563353, 563528, 563537,
    563592, 563601, 563616, 563625, 563664, 563678, 563689, 563702, 563752, 563774, 563784, 563806, 563824, 563841,
    563848, 563902, 563904, 563945, 563990, 564000, 564022, 564072, 564102, 564136, 564225, 564304, 564313, 564320,
    564337, 564344, 564353, 564656, 564665, 564678, 564744, 564758, 564760, 564782, 564784, 564798, 564824, 564838,
    564873, 564886, 564889, 564896, 565006, 565016, 565249, 565678, 565817, 565848, 565890, 565968, 566006, 566009,
    566032, 566273, 566662, 566817, 566832, 566841, 566848, 566914, 566992, 568321, 568702, 568752, 568774, 568840,
    569025, 569062, 569072, 569345, 569734, 569864, 569889, 569896, 569986, 570064, 570369, 570718, 570817, 570824,
    570882, 570960, 571010, 571168, 571393, 571608, 571630, 571744, 571778, 571872, 571905, 571960, 573441, 573798,
    573912, 574724, 574981, 575234, 575384, 575481, 575544, 575561, 575568, 575585, 575648, 575657, 575672, 575681,
    575878, 575920, 575934, 575944, 575966, 575993, 576006, 576009, 576022, 576032, 576130, 576208, 576769, 576832,
    576849, 577166, 577216, 577238, 577289, 577296, 577305, 577318, 577320, 577537, 577550, 577625, 577950, 578001,
    578014, 578040, 578110, 578112, 578177, 578190, 578273, 578646, 578768, 578793, 578800, 578945, 579528, 581121,
    581384, 581506, 581584, 581633, 581704, 581713, 582014, 582072, 582086, 582145, 582152, 582274, 582504, 582545,
    582784, 582806, 582976, 582990, 583096, 583681, 583736, 583745, 583760, 583769, 584078, 584120, 584150, 584152,
    584166, 584176, 584190, 584241, 584254, 584256, 584322, 584400, 584449, 584496, 584505, 584520, 584529, 584790,
    584824, 584838, 584848, 584862, 584897, 584904, 584962, 585040, 587521, 587678, 587704, 587782, 587793, 587806,
    587809, 587912, 587921, 588198, 588248, 588278, 588312, 588418, 588502, 588504, 589185, 589192, 589314, 589480,
    589825, 597200, 598018, 598904, 599041, 600608, 621697, 622472, 622593, 631168, 631302, 631305, 631358, 631472,
    631553, 663512, 663553, 668216, 722945, 723190, 723330, 723408, 737281, 741832, 741889, 742136, 742146, 742224,
    742273, 742904, 742914, 742992, 743041, 743280, 743302, 743336, 743425, 743814, 743864, 743937, 743968, 744066,
    744144, 744154, 744208, 744217, 744384, 744425, 744576, 748033, 748392, 748418, 748496, 750084, 750341, 750594,
    750776, 751617, 752216, 752254, 752257, 752270, 752704, 752766, 752793, 752896, 753409, 753424, 753433, 753446,
    753448, 753542, 753552, 753665, 802752, 802817, 812720, 813049, 813128, 884609, 884640, 884649, 884704, 884713,
    884728, 884737, 887064, 887185, 887192, 887425, 887448, 887465, 887472, 887585, 887616, 887681, 890848, 909313,
    910168, 910209, 910312, 910337, 910408, 910465, 910544, 910574, 910584, 944002, 944080, 948230, 948592, 948614,
    948792, 953134, 953168, 953198, 953240, 953310, 953368, 953390, 953440, 953686, 953712, 954902, 954920, 955906,
    956064, 956162, 956320, 957186, 957384, 958468, 958677, 958884, 959093, 959144, 959157, 959300, 959509, 959716,
    959720, 959732, 959744, 959764, 959768, 959788, 959800, 959820, 959848, 959860, 959925, 959952, 959965, 959968,
    959981, 960032, 960045, 960132, 960341, 960548, 960560, 960572, 960600, 960620, 960680, 960692, 960744, 960757,
    960964, 960976, 960988, 961016, 961028, 961064, 961076, 961080, 961108, 961160, 961173, 961380, 961589, 961796,
    962005, 962212, 962421, 962628, 962837, 963044, 963253, 963460, 963669, 963888, 963908, 964104, 964117, 964312,
    964325, 964372, 964568, 964581, 964776, 964789, 964836, 965032, 965045, 965240, 965253, 965300, 965496, 965509,
    965704, 965717, 965764, 965960, 965973, 966168, 966181, 966228, 966237, 966240, 966258, 966656, 970758, 971192,
    971230, 971624, 971694, 971696, 971814, 971816, 971998, 972032, 972046, 972160, 980997, 981073, 981085, 981240,
    981293, 981336, 983046, 983096, 983110, 983240, 983262, 983312, 983326, 983336, 983350, 983384, 983425, 983920,
    984190, 984192, 985089, 985448, 985478, 985529, 985584, 985602, 985680, 985713, 985720, 988289, 988534, 988536,
    988673, 989030, 989058, 989136, 992897, 993126, 993154, 993232, 994945, 995190, 995201, 995210, 995288, 999169,
    999224, 999233, 999264, 999273, 999288, 999297, 999416, 999425, 1001000, 1001018, 1001094, 1001144, 1001476,
    1001749, 1002022, 1002073, 1002080, 1002114, 1002192, 1008522, 1008992, 1009002, 1009024, 1009034, 1009064,
    1009674, 1010032, 1010042, 1010160, 1011713, 1011744, 1011753, 1011968, 1011977, 1011992, 1012001, 1012008,
    1012025, 1012032, 1012041, 1012120, 1012129, 1012160, 1012169, 1012176, 1012185, 1012192, 1012241, 1012248,
    1012281, 1012288, 1012297, 1012304, 1012313, 1012320, 1012329, 1012352, 1012361, 1012376, 1012385, 1012392,
    1012409, 1012416, 1012425, 1012432, 1012441, 1012448, 1012457, 1012464, 1012473, 1012480, 1012489, 1012504,
    1012513, 1012520, 1012537, 1012568, 1012577, 1012632, 1012641, 1012672, 1012681, 1012712, 1012721, 1012728,
    1012737, 1012816, 1012825, 1012960, 1013001, 1013024, 1013033, 1013072, 1013081, 1013216, 1017858, 1017960,
    1040258, 1040336, 1048577, 1390336, 1390593, 1423824, 1423873, 1425648, 1425665, 1471760, 1471873, 1531656,
    1531777, 1536752, 1556481, 1560816, 1572865, 1612376, 1612417, 1645952, 7342086, 7344000
};
/* Category No, numbers that are no digits: first and last of each range. */
static const uint32_t tti_other_numbers[] = {
    178, 179, 185, 185, 188, 190, 2548, 2553, 2930, 2935, 3056, 3058, 3192, 3198, 3416, 3422, 3440, 3448, 3882, 3891,
    4969, 4988, 6128, 6137, 6618, 6618, 8304, 8304, 8308, 8313, 8320, 8329, 8528, 8543, 8585, 8585, 9312, 9371,
    9450, 9471, 10102, 10131, 11517, 11517, 12690, 12693, 12832, 12841, 12872, 12879, 12881, 12895, 12928, 12937,
    12977, 12991, 43056, 43061, 65799, 65843, 65909, 65912, 65930, 65931, 66273, 66299, 66336, 66339, 67672, 67679,
    67705, 67711, 67751, 67759, 67835, 67839, 67862, 67867, 68028, 68029, 68032, 68047, 68050, 68095, 68160, 68168,
    68221, 68222, 68253, 68255, 68331, 68335, 68440, 68447, 68472, 68479, 68521, 68527, 68858, 68863, 69216, 69246,
    69405, 69414, 69457, 69460, 69573, 69579, 69714, 69733, 70113, 70132, 71482, 71483, 71914, 71922, 72794, 72812,
    73664, 73684, 93019, 93025, 93824, 93846, 119488, 119507, 119520, 119539, 119648, 119672, 125127, 125135,
    126065, 126123, 126125, 126127, 126129, 126132, 126209, 126253, 126255, 126269, 127232, 127244
};
/* Unicode 9.0.0, by the same: first code point of a range * 256 + canonical combining class. */
static const uint32_t tti_combining[] = {
    0, 196838, 202216, 202460, 203496, 203736, 203996, 205258, 205788, 206794, 207324, 209921, 211420, 212454, 214512,
    214758, 215004, 215782, 216540, 216832, 217318, 218076, 219110, 219368, 219612, 220134, 220393, 220650, 221161,
    221418, 221929, 222182, 225280, 295910, 296960, 365020, 365286, 366300, 366566, 367326, 367580, 367846, 369372,
    370918, 371420, 371686, 372190, 372452, 372710, 372746, 373003, 373260, 373517, 373774, 374031, 374288, 374545,
    374802, 375059, 375572, 375829, 376086, 376320, 376599, 376832, 377112, 377369, 377600, 378086, 378332, 378368,
    378642, 378880, 397542, 399390, 399647, 399904, 400128, 412443, 412700, 412957, 413214, 413471, 413728, 413985,
    414242, 414694, 415196, 415718, 416988, 417254, 417756, 417792, 421923, 422144, 448230, 449792, 450534, 451548,
    451814, 451840, 452582, 452864, 453340, 453606, 454108, 454144, 463140, 463360, 471270, 471516, 471782, 472284,
    472550, 473052, 473830, 474076, 474598, 474844, 475110, 475868, 476134, 476380, 476646, 476892, 477158, 477404,
    477670, 477952, 519142, 520924, 521190, 521216, 530150, 530944, 531430, 533504, 533990, 534528, 535014, 536064,
    547292, 547840, 578790, 582144, 582620, 582886, 583388, 583654, 584156, 584422, 585180, 585755, 586012, 586269,
    586726, 587484, 587750, 588252, 588774, 589824, 605191, 605440, 609545, 609792, 610790, 611036, 611302, 611584,
    637959, 638208, 642313, 642560, 670727, 670976, 675081, 675328, 703495, 703744, 707849, 708096, 736263, 736512,
    740617, 740864, 773385, 773632, 806153, 806400, 808276, 808539, 808704, 834567, 834816, 838921, 839168, 871689,
    871936, 903689, 903936, 931943, 932361, 932608, 936043, 936960, 964726, 965120, 968826, 969728, 989404, 989696,
    996828, 996864, 997340, 997376, 997848, 997888, 1012097, 1012354, 1012480, 1012868, 1012992, 1014402, 1015296,
    1015938, 1016064, 1016550, 1016841, 1017088, 1017574, 1017856, 1033948, 1033984, 1062663, 1062912, 1063177,
    1063680, 1084892, 1084928, 1269222, 1269760, 1512457, 1512704, 1520649, 1520896, 1561097, 1561344, 1564134,
    1564160, 1616356, 1616384, 1653214, 1653478, 1653724, 1653760, 1710054, 1710300, 1710336, 1728521, 1728768,
    1734118, 1735936, 1736668, 1736704, 1749222, 1750492, 1752038, 1752540, 1752576, 1782791, 1783040, 1786889,
    1787136, 1797094, 1797340, 1797606, 1799168, 1813001, 1813504, 1828359, 1828608, 1831433, 1831936, 1849095,
    1849344, 1888486, 1889024, 1889281, 1889756, 1891046, 1891548, 1892582, 1892608, 1892865, 1894656, 1895900,
    1895936, 1897702, 1897728, 1898726, 1899008, 1949926, 1950428, 1950694, 1952476, 1952742, 1953258, 1953494,
    1953756, 1953994, 1954278, 1963520, 1965030, 1965289, 1965532, 1965798, 1966044, 1966080, 2150630, 2150913,
    2151654, 2152449, 2153446, 2153728, 2154982, 2155008, 2155777, 2156518, 2156764, 2157030, 2157057, 2157788,
    2158822, 2158848, 2944998, 2945536, 2981641, 2981888, 3006694, 3014656, 3156698, 3156964, 3157224, 3157470,
    3157728, 3158016, 3184904, 3185408, 10907622, 10907648, 10908902, 10911232, 10919654, 10919936, 10940646,
    10940928, 11011593, 11011840, 11060233, 11060480, 11067622, 11072000, 11086812, 11087360, 11096841, 11097088,
    11121415, 11121664, 11124745, 11124992, 11186406, 11186432, 11186918, 11187420, 11187456, 11188198, 11188480,
    11189990, 11190272, 11190758, 11190784, 11204105, 11204352, 11267337, 11267584, 16457242, 16457472, 16654566,
    16656348, 16658150, 16658432, 16907740, 16907776, 16965852, 16965888, 17004262, 17005312, 17436124, 17436160,
    17436646, 17436672, 17447142, 17447169, 17447644, 17447680, 17448713, 17448960, 17491430, 17491676, 17491712,
    17843721, 17843968, 17858313, 17858560, 17873161, 17873415, 17873664, 17891558, 17892096, 17904393, 17904896,
    17920775, 17921024, 17940489, 17940736, 17943047, 17943296, 17970441, 17970695, 17970944, 18016519, 18016777,
    18017024, 18037767, 18038016, 18042121, 18042368, 18048742, 18050304, 18051302, 18052352, 18104841, 18105088,
    18105863, 18106112, 18137609, 18137863, 18138112, 18202377, 18202631, 18202880, 18235145, 18235392, 18265609,
    18265863, 18266112, 18295561, 18295808, 18628361, 18628608, 23785473, 23786752, 23802086, 23803648, 29138433,
    29138688, 30500312, 30500609, 30501376, 30502370, 30502616, 30503680, 30505948, 30507776, 30508518, 30509788,
    30510080, 30517990, 30518784, 30556902, 30557440, 31457510, 31459072, 31459558, 31463680, 31464422, 31465984,
    31466470, 31466752, 31467238, 31468288, 32035036, 32036608, 32064742, 32066055, 32066304
};
/* Canonical decompositions that NFC composes again: c = a b. */
static const uint32_t tti_composed[] = {
    192, 65, 768, 193, 65, 769, 194, 65, 770, 195, 65, 771, 196, 65, 776, 197, 65, 778, 199, 67, 807, 200, 69, 768,
    201, 69, 769, 202, 69, 770, 203, 69, 776, 204, 73, 768, 205, 73, 769, 206, 73, 770, 207, 73, 776, 209, 78, 771,
    210, 79, 768, 211, 79, 769, 212, 79, 770, 213, 79, 771, 214, 79, 776, 217, 85, 768, 218, 85, 769, 219, 85, 770,
    220, 85, 776, 221, 89, 769, 224, 97, 768, 225, 97, 769, 226, 97, 770, 227, 97, 771, 228, 97, 776, 229, 97, 778,
    231, 99, 807, 232, 101, 768, 233, 101, 769, 234, 101, 770, 235, 101, 776, 236, 105, 768, 237, 105, 769,
    238, 105, 770, 239, 105, 776, 241, 110, 771, 242, 111, 768, 243, 111, 769, 244, 111, 770, 245, 111, 771,
    246, 111, 776, 249, 117, 768, 250, 117, 769, 251, 117, 770, 252, 117, 776, 253, 121, 769, 255, 121, 776,
    256, 65, 772, 257, 97, 772, 258, 65, 774, 259, 97, 774, 260, 65, 808, 261, 97, 808, 262, 67, 769, 263, 99, 769,
    264, 67, 770, 265, 99, 770, 266, 67, 775, 267, 99, 775, 268, 67, 780, 269, 99, 780, 270, 68, 780, 271, 100, 780,
    274, 69, 772, 275, 101, 772, 276, 69, 774, 277, 101, 774, 278, 69, 775, 279, 101, 775, 280, 69, 808,
    281, 101, 808, 282, 69, 780, 283, 101, 780, 284, 71, 770, 285, 103, 770, 286, 71, 774, 287, 103, 774,
    288, 71, 775, 289, 103, 775, 290, 71, 807, 291, 103, 807, 292, 72, 770, 293, 104, 770, 296, 73, 771,
    297, 105, 771, 298, 73, 772, 299, 105, 772, 300, 73, 774, 301, 105, 774, 302, 73, 808, 303, 105, 808,
    304, 73, 775, 308, 74, 770, 309, 106, 770, 310, 75, 807, 311, 107, 807, 313, 76, 769, 314, 108, 769, 315, 76, 807,
    316, 108, 807, 317, 76, 780, 318, 108, 780, 323, 78, 769, 324, 110, 769, 325, 78, 807, 326, 110, 807,
    327, 78, 780, 328, 110, 780, 332, 79, 772, 333, 111, 772, 334, 79, 774, 335, 111, 774, 336, 79, 779,
    337, 111, 779, 340, 82, 769, 341, 114, 769, 342, 82, 807, 343, 114, 807, 344, 82, 780, 345, 114, 780,
    346, 83, 769, 347, 115, 769, 348, 83, 770, 349, 115, 770, 350, 83, 807, 351, 115, 807, 352, 83, 780,
    353, 115, 780, 354, 84, 807, 355, 116, 807, 356, 84, 780, 357, 116, 780, 360, 85, 771, 361, 117, 771,
    362, 85, 772, 363, 117, 772, 364, 85, 774, 365, 117, 774, 366, 85, 778, 367, 117, 778, 368, 85, 779,
    369, 117, 779, 370, 85, 808, 371, 117, 808, 372, 87, 770, 373, 119, 770, 374, 89, 770, 375, 121, 770,
    376, 89, 776, 377, 90, 769, 378, 122, 769, 379, 90, 775, 380, 122, 775, 381, 90, 780, 382, 122, 780, 416, 79, 795,
    417, 111, 795, 431, 85, 795, 432, 117, 795, 461, 65, 780, 462, 97, 780, 463, 73, 780, 464, 105, 780, 465, 79, 780,
    466, 111, 780, 467, 85, 780, 468, 117, 780, 469, 220, 772, 470, 252, 772, 471, 220, 769, 472, 252, 769,
    473, 220, 780, 474, 252, 780, 475, 220, 768, 476, 252, 768, 478, 196, 772, 479, 228, 772, 480, 550, 772,
    481, 551, 772, 482, 198, 772, 483, 230, 772, 486, 71, 780, 487, 103, 780, 488, 75, 780, 489, 107, 780,
    490, 79, 808, 491, 111, 808, 492, 490, 772, 493, 491, 772, 494, 439, 780, 495, 658, 780, 496, 106, 780,
    500, 71, 769, 501, 103, 769, 504, 78, 768, 505, 110, 768, 506, 197, 769, 507, 229, 769, 508, 198, 769,
    509, 230, 769, 510, 216, 769, 511, 248, 769, 512, 65, 783, 513, 97, 783, 514, 65, 785, 515, 97, 785, 516, 69, 783,
    517, 101, 783, 518, 69, 785, 519, 101, 785, 520, 73, 783, 521, 105, 783, 522, 73, 785, 523, 105, 785,
    524, 79, 783, 525, 111, 783, 526, 79, 785, 527, 111, 785, 528, 82, 783, 529, 114, 783, 530, 82, 785,
    531, 114, 785, 532, 85, 783, 533, 117, 783, 534, 85, 785, 535, 117, 785, 536, 83, 806, 537, 115, 806,
    538, 84, 806, 539, 116, 806, 542, 72, 780, 543, 104, 780, 550, 65, 775, 551, 97, 775, 552, 69, 807, 553, 101, 807,
    554, 214, 772, 555, 246, 772, 556, 213, 772, 557, 245, 772, 558, 79, 775, 559, 111, 775, 560, 558, 772,
    561, 559, 772, 562, 89, 772, 563, 121, 772, 901, 168, 769, 902, 913, 769, 904, 917, 769, 905, 919, 769,
    906, 921, 769, 908, 927, 769, 910, 933, 769, 911, 937, 769, 912, 970, 769, 938, 921, 776, 939, 933, 776,
    940, 945, 769, 941, 949, 769, 942, 951, 769, 943, 953, 769, 944, 971, 769, 970, 953, 776, 971, 965, 776,
    972, 959, 769, 973, 965, 769, 974, 969, 769, 979, 978, 769, 980, 978, 776, 1024, 1045, 768, 1025, 1045, 776,
    1027, 1043, 769, 1031, 1030, 776, 1036, 1050, 769, 1037, 1048, 768, 1038, 1059, 774, 1049, 1048, 774,
    1081, 1080, 774, 1104, 1077, 768, 1105, 1077, 776, 1107, 1075, 769, 1111, 1110, 776, 1116, 1082, 769,
    1117, 1080, 768, 1118, 1091, 774, 1142, 1140, 783, 1143, 1141, 783, 1217, 1046, 774, 1218, 1078, 774,
    1232, 1040, 774, 1233, 1072, 774, 1234, 1040, 776, 1235, 1072, 776, 1238, 1045, 774, 1239, 1077, 774,
    1242, 1240, 776, 1243, 1241, 776, 1244, 1046, 776, 1245, 1078, 776, 1246, 1047, 776, 1247, 1079, 776,
    1250, 1048, 772, 1251, 1080, 772, 1252, 1048, 776, 1253, 1080, 776, 1254, 1054, 776, 1255, 1086, 776,
    1258, 1256, 776, 1259, 1257, 776, 1260, 1069, 776, 1261, 1101, 776, 1262, 1059, 772, 1263, 1091, 772,
    1264, 1059, 776, 1265, 1091, 776, 1266, 1059, 779, 1267, 1091, 779, 1268, 1063, 776, 1269, 1095, 776,
    1272, 1067, 776, 1273, 1099, 776, 1570, 1575, 1619, 1571, 1575, 1620, 1572, 1608, 1620, 1573, 1575, 1621,
    1574, 1610, 1620, 1728, 1749, 1620, 1730, 1729, 1620, 1747, 1746, 1620, 2345, 2344, 2364, 2353, 2352, 2364,
    2356, 2355, 2364, 2507, 2503, 2494, 2508, 2503, 2519, 2888, 2887, 2902, 2891, 2887, 2878, 2892, 2887, 2903,
    2964, 2962, 3031, 3018, 3014, 3006, 3019, 3015, 3006, 3020, 3014, 3031, 3144, 3142, 3158, 3264, 3263, 3285,
    3271, 3270, 3285, 3272, 3270, 3286, 3274, 3270, 3266, 3275, 3274, 3285, 3402, 3398, 3390, 3403, 3399, 3390,
    3404, 3398, 3415, 3546, 3545, 3530, 3548, 3545, 3535, 3549, 3548, 3530, 3550, 3545, 3551, 4134, 4133, 4142,
    6918, 6917, 6965, 6920, 6919, 6965, 6922, 6921, 6965, 6924, 6923, 6965, 6926, 6925, 6965, 6930, 6929, 6965,
    6971, 6970, 6965, 6973, 6972, 6965, 6976, 6974, 6965, 6977, 6975, 6965, 6979, 6978, 6965, 7680, 65, 805,
    7681, 97, 805, 7682, 66, 775, 7683, 98, 775, 7684, 66, 803, 7685, 98, 803, 7686, 66, 817, 7687, 98, 817,
    7688, 199, 769, 7689, 231, 769, 7690, 68, 775, 7691, 100, 775, 7692, 68, 803, 7693, 100, 803, 7694, 68, 817,
    7695, 100, 817, 7696, 68, 807, 7697, 100, 807, 7698, 68, 813, 7699, 100, 813, 7700, 274, 768, 7701, 275, 768,
    7702, 274, 769, 7703, 275, 769, 7704, 69, 813, 7705, 101, 813, 7706, 69, 816, 7707, 101, 816, 7708, 552, 774,
    7709, 553, 774, 7710, 70, 775, 7711, 102, 775, 7712, 71, 772, 7713, 103, 772, 7714, 72, 775, 7715, 104, 775,
    7716, 72, 803, 7717, 104, 803, 7718, 72, 776, 7719, 104, 776, 7720, 72, 807, 7721, 104, 807, 7722, 72, 814,
    7723, 104, 814, 7724, 73, 816, 7725, 105, 816, 7726, 207, 769, 7727, 239, 769, 7728, 75, 769, 7729, 107, 769,
    7730, 75, 803, 7731, 107, 803, 7732, 75, 817, 7733, 107, 817, 7734, 76, 803, 7735, 108, 803, 7736, 7734, 772,
    7737, 7735, 772, 7738, 76, 817, 7739, 108, 817, 7740, 76, 813, 7741, 108, 813, 7742, 77, 769, 7743, 109, 769,
    7744, 77, 775, 7745, 109, 775, 7746, 77, 803, 7747, 109, 803, 7748, 78, 775, 7749, 110, 775, 7750, 78, 803,
    7751, 110, 803, 7752, 78, 817, 7753, 110, 817, 7754, 78, 813, 7755, 110, 813, 7756, 213, 769, 7757, 245, 769,
    7758, 213, 776, 7759, 245, 776, 7760, 332, 768, 7761, 333, 768, 7762, 332, 769, 7763, 333, 769, 7764, 80, 769,
    7765, 112, 769, 7766, 80, 775, 7767, 112, 775, 7768, 82, 775, 7769, 114, 775, 7770, 82, 803, 7771, 114, 803,
    7772, 7770, 772, 7773, 7771, 772, 7774, 82, 817, 7775, 114, 817, 7776, 83, 775, 7777, 115, 775, 7778, 83, 803,
    7779, 115, 803, 7780, 346, 775, 7781, 347, 775, 7782, 352, 775, 7783, 353, 775, 7784, 7778, 775, 7785, 7779, 775,
    7786, 84, 775, 7787, 116, 775, 7788, 84, 803, 7789, 116, 803, 7790, 84, 817, 7791, 116, 817, 7792, 84, 813,
    7793, 116, 813, 7794, 85, 804, 7795, 117, 804, 7796, 85, 816, 7797, 117, 816, 7798, 85, 813, 7799, 117, 813,
    7800, 360, 769, 7801, 361, 769, 7802, 362, 776, 7803, 363, 776, 7804, 86, 771, 7805, 118, 771, 7806, 86, 803,
    7807, 118, 803, 7808, 87, 768, 7809, 119, 768, 7810, 87, 769, 7811, 119, 769, 7812, 87, 776, 7813, 119, 776,
    7814, 87, 775, 7815, 119, 775, 7816, 87, 803, 7817, 119, 803, 7818, 88, 775, 7819, 120, 775, 7820, 88, 776,
    7821, 120, 776, 7822, 89, 775, 7823, 121, 775, 7824, 90, 770, 7825, 122, 770, 7826, 90, 803, 7827, 122, 803,
    7828, 90, 817, 7829, 122, 817, 7830, 104, 817, 7831, 116, 776, 7832, 119, 778, 7833, 121, 778, 7835, 383, 775,
    7840, 65, 803, 7841, 97, 803, 7842, 65, 777, 7843, 97, 777, 7844, 194, 769, 7845, 226, 769, 7846, 194, 768,
    7847, 226, 768, 7848, 194, 777, 7849, 226, 777, 7850, 194, 771, 7851, 226, 771, 7852, 7840, 770, 7853, 7841, 770,
    7854, 258, 769, 7855, 259, 769, 7856, 258, 768, 7857, 259, 768, 7858, 258, 777, 7859, 259, 777, 7860, 258, 771,
    7861, 259, 771, 7862, 7840, 774, 7863, 7841, 774, 7864, 69, 803, 7865, 101, 803, 7866, 69, 777, 7867, 101, 777,
    7868, 69, 771, 7869, 101, 771, 7870, 202, 769, 7871, 234, 769, 7872, 202, 768, 7873, 234, 768, 7874, 202, 777,
    7875, 234, 777, 7876, 202, 771, 7877, 234, 771, 7878, 7864, 770, 7879, 7865, 770, 7880, 73, 777, 7881, 105, 777,
    7882, 73, 803, 7883, 105, 803, 7884, 79, 803, 7885, 111, 803, 7886, 79, 777, 7887, 111, 777, 7888, 212, 769,
    7889, 244, 769, 7890, 212, 768, 7891, 244, 768, 7892, 212, 777, 7893, 244, 777, 7894, 212, 771, 7895, 244, 771,
    7896, 7884, 770, 7897, 7885, 770, 7898, 416, 769, 7899, 417, 769, 7900, 416, 768, 7901, 417, 768, 7902, 416, 777,
    7903, 417, 777, 7904, 416, 771, 7905, 417, 771, 7906, 416, 803, 7907, 417, 803, 7908, 85, 803, 7909, 117, 803,
    7910, 85, 777, 7911, 117, 777, 7912, 431, 769, 7913, 432, 769, 7914, 431, 768, 7915, 432, 768, 7916, 431, 777,
    7917, 432, 777, 7918, 431, 771, 7919, 432, 771, 7920, 431, 803, 7921, 432, 803, 7922, 89, 768, 7923, 121, 768,
    7924, 89, 803, 7925, 121, 803, 7926, 89, 777, 7927, 121, 777, 7928, 89, 771, 7929, 121, 771, 7936, 945, 787,
    7937, 945, 788, 7938, 7936, 768, 7939, 7937, 768, 7940, 7936, 769, 7941, 7937, 769, 7942, 7936, 834,
    7943, 7937, 834, 7944, 913, 787, 7945, 913, 788, 7946, 7944, 768, 7947, 7945, 768, 7948, 7944, 769,
    7949, 7945, 769, 7950, 7944, 834, 7951, 7945, 834, 7952, 949, 787, 7953, 949, 788, 7954, 7952, 768,
    7955, 7953, 768, 7956, 7952, 769, 7957, 7953, 769, 7960, 917, 787, 7961, 917, 788, 7962, 7960, 768,
    7963, 7961, 768, 7964, 7960, 769, 7965, 7961, 769, 7968, 951, 787, 7969, 951, 788, 7970, 7968, 768,
    7971, 7969, 768, 7972, 7968, 769, 7973, 7969, 769, 7974, 7968, 834, 7975, 7969, 834, 7976, 919, 787,
    7977, 919, 788, 7978, 7976, 768, 7979, 7977, 768, 7980, 7976, 769, 7981, 7977, 769, 7982, 7976, 834,
    7983, 7977, 834, 7984, 953, 787, 7985, 953, 788, 7986, 7984, 768, 7987, 7985, 768, 7988, 7984, 769,
    7989, 7985, 769, 7990, 7984, 834, 7991, 7985, 834, 7992, 921, 787, 7993, 921, 788, 7994, 7992, 768,
    7995, 7993, 768, 7996, 7992, 769, 7997, 7993, 769, 7998, 7992, 834, 7999, 7993, 834, 8000, 959, 787,
    8001, 959, 788, 8002, 8000, 768, 8003, 8001, 768, 8004, 8000, 769, 8005, 8001, 769, 8008, 927, 787,
    8009, 927, 788, 8010, 8008, 768, 8011, 8009, 768, 8012, 8008, 769, 8013, 8009, 769, 8016, 965, 787,
    8017, 965, 788, 8018, 8016, 768, 8019, 8017, 768, 8020, 8016, 769, 8021, 8017, 769, 8022, 8016, 834,
    8023, 8017, 834, 8025, 933, 788, 8027, 8025, 768, 8029, 8025, 769, 8031, 8025, 834, 8032, 969, 787,
    8033, 969, 788, 8034, 8032, 768, 8035, 8033, 768, 8036, 8032, 769, 8037, 8033, 769, 8038, 8032, 834,
    8039, 8033, 834, 8040, 937, 787, 8041, 937, 788, 8042, 8040, 768, 8043, 8041, 768, 8044, 8040, 769,
    8045, 8041, 769, 8046, 8040, 834, 8047, 8041, 834, 8048, 945, 768, 8050, 949, 768, 8052, 951, 768, 8054, 953, 768,
    8056, 959, 768, 8058, 965, 768, 8060, 969, 768, 8064, 7936, 837, 8065, 7937, 837, 8066, 7938, 837,
    8067, 7939, 837, 8068, 7940, 837, 8069, 7941, 837, 8070, 7942, 837, 8071, 7943, 837, 8072, 7944, 837,
    8073, 7945, 837, 8074, 7946, 837, 8075, 7947, 837, 8076, 7948, 837, 8077, 7949, 837, 8078, 7950, 837,
    8079, 7951, 837, 8080, 7968, 837, 8081, 7969, 837, 8082, 7970, 837, 8083, 7971, 837, 8084, 7972, 837,
    8085, 7973, 837, 8086, 7974, 837, 8087, 7975, 837, 8088, 7976, 837, 8089, 7977, 837, 8090, 7978, 837,
    8091, 7979, 837, 8092, 7980, 837, 8093, 7981, 837, 8094, 7982, 837, 8095, 7983, 837, 8096, 8032, 837,
    8097, 8033, 837, 8098, 8034, 837, 8099, 8035, 837, 8100, 8036, 837, 8101, 8037, 837, 8102, 8038, 837,
    8103, 8039, 837, 8104, 8040, 837, 8105, 8041, 837, 8106, 8042, 837, 8107, 8043, 837, 8108, 8044, 837,
    8109, 8045, 837, 8110, 8046, 837, 8111, 8047, 837, 8112, 945, 774, 8113, 945, 772, 8114, 8048, 837,
    8115, 945, 837, 8116, 940, 837, 8118, 945, 834, 8119, 8118, 837, 8120, 913, 774, 8121, 913, 772, 8122, 913, 768,
    8124, 913, 837, 8129, 168, 834, 8130, 8052, 837, 8131, 951, 837, 8132, 942, 837, 8134, 951, 834, 8135, 8134, 837,
    8136, 917, 768, 8138, 919, 768, 8140, 919, 837, 8141, 8127, 768, 8142, 8127, 769, 8143, 8127, 834, 8144, 953, 774,
    8145, 953, 772, 8146, 970, 768, 8150, 953, 834, 8151, 970, 834, 8152, 921, 774, 8153, 921, 772, 8154, 921, 768,
    8157, 8190, 768, 8158, 8190, 769, 8159, 8190, 834, 8160, 965, 774, 8161, 965, 772, 8162, 971, 768, 8164, 961, 787,
    8165, 961, 788, 8166, 965, 834, 8167, 971, 834, 8168, 933, 774, 8169, 933, 772, 8170, 933, 768, 8172, 929, 788,
    8173, 168, 768, 8178, 8060, 837, 8179, 969, 837, 8180, 974, 837, 8182, 969, 834, 8183, 8182, 837, 8184, 927, 768,
    8186, 937, 768, 8188, 937, 837, 8602, 8592, 824, 8603, 8594, 824, 8622, 8596, 824, 8653, 8656, 824,
    8654, 8660, 824, 8655, 8658, 824, 8708, 8707, 824, 8713, 8712, 824, 8716, 8715, 824, 8740, 8739, 824,
    8742, 8741, 824, 8769, 8764, 824, 8772, 8771, 824, 8775, 8773, 824, 8777, 8776, 824, 8800, 61, 824,
    8802, 8801, 824, 8813, 8781, 824, 8814, 60, 824, 8815, 62, 824, 8816, 8804, 824, 8817, 8805, 824, 8820, 8818, 824,
    8821, 8819, 824, 8824, 8822, 824, 8825, 8823, 824, 8832, 8826, 824, 8833, 8827, 824, 8836, 8834, 824,
    8837, 8835, 824, 8840, 8838, 824, 8841, 8839, 824, 8876, 8866, 824, 8877, 8872, 824, 8878, 8873, 824,
    8879, 8875, 824, 8928, 8828, 824, 8929, 8829, 824, 8930, 8849, 824, 8931, 8850, 824, 8938, 8882, 824,
    8939, 8883, 824, 8940, 8884, 824, 8941, 8885, 824, 12364, 12363, 12441, 12366, 12365, 12441, 12368, 12367, 12441,
    12370, 12369, 12441, 12372, 12371, 12441, 12374, 12373, 12441, 12376, 12375, 12441, 12378, 12377, 12441,
    12380, 12379, 12441, 12382, 12381, 12441, 12384, 12383, 12441, 12386, 12385, 12441, 12389, 12388, 12441,
    12391, 12390, 12441, 12393, 12392, 12441, 12400, 12399, 12441, 12401, 12399, 12442, 12403, 12402, 12441,
    12404, 12402, 12442, 12406, 12405, 12441, 12407, 12405, 12442, 12409, 12408, 12441, 12410, 12408, 12442,
    12412, 12411, 12441, 12413, 12411, 12442, 12436, 12358, 12441, 12446, 12445, 12441, 12460, 12459, 12441,
    12462, 12461, 12441, 12464, 12463, 12441, 12466, 12465, 12441, 12468, 12467, 12441, 12470, 12469, 12441,
    12472, 12471, 12441, 12474, 12473, 12441, 12476, 12475, 12441, 12478, 12477, 12441, 12480, 12479, 12441,
    12482, 12481, 12441, 12485, 12484, 12441, 12487, 12486, 12441, 12489, 12488, 12441, 12496, 12495, 12441,
    12497, 12495, 12442, 12499, 12498, 12441, 12500, 12498, 12442, 12502, 12501, 12441, 12503, 12501, 12442,
    12505, 12504, 12441, 12506, 12504, 12442, 12508, 12507, 12441, 12509, 12507, 12442, 12532, 12454, 12441,
    12535, 12527, 12441, 12536, 12528, 12441, 12537, 12529, 12441, 12538, 12530, 12441, 12542, 12541, 12441,
    69786, 69785, 69818, 69788, 69787, 69818, 69803, 69797, 69818, 69934, 69937, 69927, 69935, 69938, 69927,
    70475, 70471, 70462, 70476, 70471, 70487, 70843, 70841, 70842, 70844, 70841, 70832, 70846, 70841, 70845,
    71098, 71096, 71087, 71099, 71097, 71087
};
/* Those that it does not: c = a b, or c = a where b is 0. */
static const uint32_t tti_one_way[] = {
    832, 768, 0, 833, 769, 0, 835, 787, 0, 836, 776, 769, 884, 697, 0, 894, 59, 0, 903, 183, 0, 2392, 2325, 2364,
    2393, 2326, 2364, 2394, 2327, 2364, 2395, 2332, 2364, 2396, 2337, 2364, 2397, 2338, 2364, 2398, 2347, 2364,
    2399, 2351, 2364, 2524, 2465, 2492, 2525, 2466, 2492, 2527, 2479, 2492, 2611, 2610, 2620, 2614, 2616, 2620,
    2649, 2582, 2620, 2650, 2583, 2620, 2651, 2588, 2620, 2654, 2603, 2620, 2908, 2849, 2876, 2909, 2850, 2876,
    3907, 3906, 4023, 3917, 3916, 4023, 3922, 3921, 4023, 3927, 3926, 4023, 3932, 3931, 4023, 3945, 3904, 4021,
    3955, 3953, 3954, 3957, 3953, 3956, 3958, 4018, 3968, 3960, 4019, 3968, 3969, 3953, 3968, 3987, 3986, 4023,
    3997, 3996, 4023, 4002, 4001, 4023, 4007, 4006, 4023, 4012, 4011, 4023, 4025, 3984, 4021, 8049, 940, 0,
    8051, 941, 0, 8053, 942, 0, 8055, 943, 0, 8057, 972, 0, 8059, 973, 0, 8061, 974, 0, 8123, 902, 0, 8126, 953, 0,
    8137, 904, 0, 8139, 905, 0, 8147, 912, 0, 8155, 906, 0, 8163, 944, 0, 8171, 910, 0, 8174, 901, 0, 8175, 96, 0,
    8185, 908, 0, 8187, 911, 0, 8189, 180, 0, 8192, 8194, 0, 8193, 8195, 0, 8486, 937, 0, 8490, 75, 0, 8491, 197, 0,
    9001, 12296, 0, 9002, 12297, 0, 10972, 10973, 824, 63744, 35912, 0, 63745, 26356, 0, 63746, 36554, 0,
    63747, 36040, 0, 63748, 28369, 0, 63749, 20018, 0, 63750, 21477, 0, 63751, 40860, 0, 63752, 40860, 0,
    63753, 22865, 0, 63754, 37329, 0, 63755, 21895, 0, 63756, 22856, 0, 63757, 25078, 0, 63758, 30313, 0,
    63759, 32645, 0, 63760, 34367, 0, 63761, 34746, 0, 63762, 35064, 0, 63763, 37007, 0, 63764, 27138, 0,
    63765, 27931, 0, 63766, 28889, 0, 63767, 29662, 0, 63768, 33853, 0, 63769, 37226, 0, 63770, 39409, 0,
    63771, 20098, 0, 63772, 21365, 0, 63773, 27396, 0, 63774, 29211, 0, 63775, 34349, 0, 63776, 40478, 0,
    63777, 23888, 0, 63778, 28651, 0, 63779, 34253, 0, 63780, 35172, 0, 63781, 25289, 0, 63782, 33240, 0,
    63783, 34847, 0, 63784, 24266, 0, 63785, 26391, 0, 63786, 28010, 0, 63787, 29436, 0, 63788, 37070, 0,
    63789, 20358, 0, 63790, 20919, 0, 63791, 21214, 0, 63792, 25796, 0, 63793, 27347, 0, 63794, 29200, 0,
    63795, 30439, 0, 63796, 32769, 0, 63797, 34310, 0, 63798, 34396, 0, 63799, 36335, 0, 63800, 38706, 0,
    63801, 39791, 0, 63802, 40442, 0, 63803, 30860, 0, 63804, 31103, 0, 63805, 32160, 0, 63806, 33737, 0,
    63807, 37636, 0, 63808, 40575, 0, 63809, 35542, 0, 63810, 22751, 0, 63811, 24324, 0, 63812, 31840, 0,
    63813, 32894, 0, 63814, 29282, 0, 63815, 30922, 0, 63816, 36034, 0, 63817, 38647, 0, 63818, 22744, 0,
    63819, 23650, 0, 63820, 27155, 0, 63821, 28122, 0, 63822, 28431, 0, 63823, 32047, 0, 63824, 32311, 0,
    63825, 38475, 0, 63826, 21202, 0, 63827, 32907, 0, 63828, 20956, 0, 63829, 20940, 0, 63830, 31260, 0,
    63831, 32190, 0, 63832, 33777, 0, 63833, 38517, 0, 63834, 35712, 0, 63835, 25295, 0, 63836, 27138, 0,
    63837, 35582, 0, 63838, 20025, 0, 63839, 23527, 0, 63840, 24594, 0, 63841, 29575, 0, 63842, 30064, 0,
    63843, 21271, 0, 63844, 30971, 0, 63845, 20415, 0, 63846, 24489, 0, 63847, 19981, 0, 63848, 27852, 0,
    63849, 25976, 0, 63850, 32034, 0, 63851, 21443, 0, 63852, 22622, 0, 63853, 30465, 0, 63854, 33865, 0,
    63855, 35498, 0, 63856, 27578, 0, 63857, 36784, 0, 63858, 27784, 0, 63859, 25342, 0, 63860, 33509, 0,
    63861, 25504, 0, 63862, 30053, 0, 63863, 20142, 0, 63864, 20841, 0, 63865, 20937, 0, 63866, 26753, 0,
    63867, 31975, 0, 63868, 33391, 0, 63869, 35538, 0, 63870, 37327, 0, 63871, 21237, 0, 63872, 21570, 0,
    63873, 22899, 0, 63874, 24300, 0, 63875, 26053, 0, 63876, 28670, 0, 63877, 31018, 0, 63878, 38317, 0,
    63879, 39530, 0, 63880, 40599, 0, 63881, 40654, 0, 63882, 21147, 0, 63883, 26310, 0, 63884, 27511, 0,
    63885, 36706, 0, 63886, 24180, 0, 63887, 24976, 0, 63888, 25088, 0, 63889, 25754, 0, 63890, 28451, 0,
    63891, 29001, 0, 63892, 29833, 0, 63893, 31178, 0, 63894, 32244, 0, 63895, 32879, 0, 63896, 36646, 0,
    63897, 34030, 0, 63898, 36899, 0, 63899, 37706, 0, 63900, 21015, 0, 63901, 21155, 0, 63902, 21693, 0,
    63903, 28872, 0, 63904, 35010, 0, 63905, 35498, 0, 63906, 24265, 0, 63907, 24565, 0, 63908, 25467, 0,
    63909, 27566, 0, 63910, 31806, 0, 63911, 29557, 0, 63912, 20196, 0, 63913, 22265, 0, 63914, 23527, 0,
    63915, 23994, 0, 63916, 24604, 0, 63917, 29618, 0, 63918, 29801, 0, 63919, 32666, 0, 63920, 32838, 0,
    63921, 37428, 0, 63922, 38646, 0, 63923, 38728, 0, 63924, 38936, 0, 63925, 20363, 0, 63926, 31150, 0,
    63927, 37300, 0, 63928, 38584, 0, 63929, 24801, 0, 63930, 20102, 0, 63931, 20698, 0, 63932, 23534, 0,
    63933, 23615, 0, 63934, 26009, 0, 63935, 27138, 0, 63936, 29134, 0, 63937, 30274, 0, 63938, 34044, 0,
    63939, 36988, 0, 63940, 40845, 0, 63941, 26248, 0, 63942, 38446, 0, 63943, 21129, 0, 63944, 26491, 0,
    63945, 26611, 0, 63946, 27969, 0, 63947, 28316, 0, 63948, 29705, 0, 63949, 30041, 0, 63950, 30827, 0,
    63951, 32016, 0, 63952, 39006, 0, 63953, 20845, 0, 63954, 25134, 0, 63955, 38520, 0, 63956, 20523, 0,
    63957, 23833, 0, 63958, 28138, 0, 63959, 36650, 0, 63960, 24459, 0, 63961, 24900, 0, 63962, 26647, 0,
    63963, 29575, 0, 63964, 38534, 0, 63965, 21033, 0, 63966, 21519, 0, 63967, 23653, 0, 63968, 26131, 0,
    63969, 26446, 0, 63970, 26792, 0, 63971, 27877, 0, 63972, 29702, 0, 63973, 30178, 0, 63974, 32633, 0,
    63975, 35023, 0, 63976, 35041, 0, 63977, 37324, 0, 63978, 38626, 0, 63979, 21311, 0, 63980, 28346, 0,
    63981, 21533, 0, 63982, 29136, 0, 63983, 29848, 0, 63984, 34298, 0, 63985, 38563, 0, 63986, 40023, 0,
    63987, 40607, 0, 63988, 26519, 0, 63989, 28107, 0, 63990, 33256, 0, 63991, 31435, 0, 63992, 31520, 0,
    63993, 31890, 0, 63994, 29376, 0, 63995, 28825, 0, 63996, 35672, 0, 63997, 20160, 0, 63998, 33590, 0,
    63999, 21050, 0, 64000, 20999, 0, 64001, 24230, 0, 64002, 25299, 0, 64003, 31958, 0, 64004, 23429, 0,
    64005, 27934, 0, 64006, 26292, 0, 64007, 36667, 0, 64008, 34892, 0, 64009, 38477, 0, 64010, 35211, 0,
    64011, 24275, 0, 64012, 20800, 0, 64013, 21952, 0, 64016, 22618, 0, 64018, 26228, 0, 64021, 20958, 0,
    64022, 29482, 0, 64023, 30410, 0, 64024, 31036, 0, 64025, 31070, 0, 64026, 31077, 0, 64027, 31119, 0,
    64028, 38742, 0, 64029, 31934, 0, 64030, 32701, 0, 64032, 34322, 0, 64034, 35576, 0, 64037, 36920, 0,
    64038, 37117, 0, 64042, 39151, 0, 64043, 39164, 0, 64044, 39208, 0, 64045, 40372, 0, 64046, 37086, 0,
    64047, 38583, 0, 64048, 20398, 0, 64049, 20711, 0, 64050, 20813, 0, 64051, 21193, 0, 64052, 21220, 0,
    64053, 21329, 0, 64054, 21917, 0, 64055, 22022, 0, 64056, 22120, 0, 64057, 22592, 0, 64058, 22696, 0,
    64059, 23652, 0, 64060, 23662, 0, 64061, 24724, 0, 64062, 24936, 0, 64063, 24974, 0, 64064, 25074, 0,
    64065, 25935, 0, 64066, 26082, 0, 64067, 26257, 0, 64068, 26757, 0, 64069, 28023, 0, 64070, 28186, 0,
    64071, 28450, 0, 64072, 29038, 0, 64073, 29227, 0, 64074, 29730, 0, 64075, 30865, 0, 64076, 31038, 0,
    64077, 31049, 0, 64078, 31048, 0, 64079, 31056, 0, 64080, 31062, 0, 64081, 31069, 0, 64082, 31117, 0,
    64083, 31118, 0, 64084, 31296, 0, 64085, 31361, 0, 64086, 31680, 0, 64087, 32244, 0, 64088, 32265, 0,
    64089, 32321, 0, 64090, 32626, 0, 64091, 32773, 0, 64092, 33261, 0, 64093, 33401, 0, 64094, 33401, 0,
    64095, 33879, 0, 64096, 35088, 0, 64097, 35222, 0, 64098, 35585, 0, 64099, 35641, 0, 64100, 36051, 0,
    64101, 36104, 0, 64102, 36790, 0, 64103, 36920, 0, 64104, 38627, 0, 64105, 38911, 0, 64106, 38971, 0,
    64107, 24693, 0, 64108, 148206, 0, 64109, 33304, 0, 64112, 20006, 0, 64113, 20917, 0, 64114, 20840, 0,
    64115, 20352, 0, 64116, 20805, 0, 64117, 20864, 0, 64118, 21191, 0, 64119, 21242, 0, 64120, 21917, 0,
    64121, 21845, 0, 64122, 21913, 0, 64123, 21986, 0, 64124, 22618, 0, 64125, 22707, 0, 64126, 22852, 0,
    64127, 22868, 0, 64128, 23138, 0, 64129, 23336, 0, 64130, 24274, 0, 64131, 24281, 0, 64132, 24425, 0,
    64133, 24493, 0, 64134, 24792, 0, 64135, 24910, 0, 64136, 24840, 0, 64137, 24974, 0, 64138, 24928, 0,
    64139, 25074, 0, 64140, 25140, 0, 64141, 25540, 0, 64142, 25628, 0, 64143, 25682, 0, 64144, 25942, 0,
    64145, 26228, 0, 64146, 26391, 0, 64147, 26395, 0, 64148, 26454, 0, 64149, 27513, 0, 64150, 27578, 0,
    64151, 27969, 0, 64152, 28379, 0, 64153, 28363, 0, 64154, 28450, 0, 64155, 28702, 0, 64156, 29038, 0,
    64157, 30631, 0, 64158, 29237, 0, 64159, 29359, 0, 64160, 29482, 0, 64161, 29809, 0, 64162, 29958, 0,
    64163, 30011, 0, 64164, 30237, 0, 64165, 30239, 0, 64166, 30410, 0, 64167, 30427, 0, 64168, 30452, 0,
    64169, 30538, 0, 64170, 30528, 0, 64171, 30924, 0, 64172, 31409, 0, 64173, 31680, 0, 64174, 31867, 0,
    64175, 32091, 0, 64176, 32244, 0, 64177, 32574, 0, 64178, 32773, 0, 64179, 33618, 0, 64180, 33775, 0,
    64181, 34681, 0, 64182, 35137, 0, 64183, 35206, 0, 64184, 35222, 0, 64185, 35519, 0, 64186, 35576, 0,
    64187, 35531, 0, 64188, 35585, 0, 64189, 35582, 0, 64190, 35565, 0, 64191, 35641, 0, 64192, 35722, 0,
    64193, 36104, 0, 64194, 36664, 0, 64195, 36978, 0, 64196, 37273, 0, 64197, 37494, 0, 64198, 38524, 0,
    64199, 38627, 0, 64200, 38742, 0, 64201, 38875, 0, 64202, 38911, 0, 64203, 38923, 0, 64204, 38971, 0,
    64205, 39698, 0, 64206, 40860, 0, 64207, 141386, 0, 64208, 141380, 0, 64209, 144341, 0, 64210, 15261, 0,
    64211, 16408, 0, 64212, 16441, 0, 64213, 152137, 0, 64214, 154832, 0, 64215, 163539, 0, 64216, 40771, 0,
    64217, 40846, 0, 64285, 1497, 1460, 64287, 1522, 1463, 64298, 1513, 1473, 64299, 1513, 1474, 64300, 64329, 1473,
    64301, 64329, 1474, 64302, 1488, 1463, 64303, 1488, 1464, 64304, 1488, 1468, 64305, 1489, 1468, 64306, 1490, 1468,
    64307, 1491, 1468, 64308, 1492, 1468, 64309, 1493, 1468, 64310, 1494, 1468, 64312, 1496, 1468, 64313, 1497, 1468,
    64314, 1498, 1468, 64315, 1499, 1468, 64316, 1500, 1468, 64318, 1502, 1468, 64320, 1504, 1468, 64321, 1505, 1468,
    64323, 1507, 1468, 64324, 1508, 1468, 64326, 1510, 1468, 64327, 1511, 1468, 64328, 1512, 1468, 64329, 1513, 1468,
    64330, 1514, 1468, 64331, 1493, 1465, 64332, 1489, 1471, 64333, 1499, 1471, 64334, 1508, 1471,
    119134, 119127, 119141, 119135, 119128, 119141, 119136, 119135, 119150, 119137, 119135, 119151,
    119138, 119135, 119152, 119139, 119135, 119153, 119140, 119135, 119154, 119227, 119225, 119141,
    119228, 119226, 119141, 119229, 119227, 119150, 119230, 119228, 119150, 119231, 119227, 119151,
    119232, 119228, 119151, 194560, 20029, 0, 194561, 20024, 0, 194562, 20033, 0, 194563, 131362, 0, 194564, 20320, 0,
    194565, 20398, 0, 194566, 20411, 0, 194567, 20482, 0, 194568, 20602, 0, 194569, 20633, 0, 194570, 20711, 0,
    194571, 20687, 0, 194572, 13470, 0, 194573, 132666, 0, 194574, 20813, 0, 194575, 20820, 0, 194576, 20836, 0,
    194577, 20855, 0, 194578, 132380, 0, 194579, 13497, 0, 194580, 20839, 0, 194581, 20877, 0, 194582, 132427, 0,
    194583, 20887, 0, 194584, 20900, 0, 194585, 20172, 0, 194586, 20908, 0, 194587, 20917, 0, 194588, 168415, 0,
    194589, 20981, 0, 194590, 20995, 0, 194591, 13535, 0, 194592, 21051, 0, 194593, 21062, 0, 194594, 21106, 0,
    194595, 21111, 0, 194596, 13589, 0, 194597, 21191, 0, 194598, 21193, 0, 194599, 21220, 0, 194600, 21242, 0,
    194601, 21253, 0, 194602, 21254, 0, 194603, 21271, 0, 194604, 21321, 0, 194605, 21329, 0, 194606, 21338, 0,
    194607, 21363, 0, 194608, 21373, 0, 194609, 21375, 0, 194610, 21375, 0, 194611, 21375, 0, 194612, 133676, 0,
    194613, 28784, 0, 194614, 21450, 0, 194615, 21471, 0, 194616, 133987, 0, 194617, 21483, 0, 194618, 21489, 0,
    194619, 21510, 0, 194620, 21662, 0, 194621, 21560, 0, 194622, 21576, 0, 194623, 21608, 0, 194624, 21666, 0,
    194625, 21750, 0, 194626, 21776, 0, 194627, 21843, 0, 194628, 21859, 0, 194629, 21892, 0, 194630, 21892, 0,
    194631, 21913, 0, 194632, 21931, 0, 194633, 21939, 0, 194634, 21954, 0, 194635, 22294, 0, 194636, 22022, 0,
    194637, 22295, 0, 194638, 22097, 0, 194639, 22132, 0, 194640, 20999, 0, 194641, 22766, 0, 194642, 22478, 0,
    194643, 22516, 0, 194644, 22541, 0, 194645, 22411, 0, 194646, 22578, 0, 194647, 22577, 0, 194648, 22700, 0,
    194649, 136420, 0, 194650, 22770, 0, 194651, 22775, 0, 194652, 22790, 0, 194653, 22810, 0, 194654, 22818, 0,
    194655, 22882, 0, 194656, 136872, 0, 194657, 136938, 0, 194658, 23020, 0, 194659, 23067, 0, 194660, 23079, 0,
    194661, 23000, 0, 194662, 23142, 0, 194663, 14062, 0, 194664, 14076, 0, 194665, 23304, 0, 194666, 23358, 0,
    194667, 23358, 0, 194668, 137672, 0, 194669, 23491, 0, 194670, 23512, 0, 194671, 23527, 0, 194672, 23539, 0,
    194673, 138008, 0, 194674, 23551, 0, 194675, 23558, 0, 194676, 24403, 0, 194677, 23586, 0, 194678, 14209, 0,
    194679, 23648, 0, 194680, 23662, 0, 194681, 23744, 0, 194682, 23693, 0, 194683, 138724, 0, 194684, 23875, 0,
    194685, 138726, 0, 194686, 23918, 0, 194687, 23915, 0, 194688, 23932, 0, 194689, 24033, 0, 194690, 24034, 0,
    194691, 14383, 0, 194692, 24061, 0, 194693, 24104, 0, 194694, 24125, 0, 194695, 24169, 0, 194696, 14434, 0,
    194697, 139651, 0, 194698, 14460, 0, 194699, 24240, 0, 194700, 24243, 0, 194701, 24246, 0, 194702, 24266, 0,
    194703, 172946, 0, 194704, 24318, 0, 194705, 140081, 0, 194706, 140081, 0, 194707, 33281, 0, 194708, 24354, 0,
    194709, 24354, 0, 194710, 14535, 0, 194711, 144056, 0, 194712, 156122, 0, 194713, 24418, 0, 194714, 24427, 0,
    194715, 14563, 0, 194716, 24474, 0, 194717, 24525, 0, 194718, 24535, 0, 194719, 24569, 0, 194720, 24705, 0,
    194721, 14650, 0, 194722, 14620, 0, 194723, 24724, 0, 194724, 141012, 0, 194725, 24775, 0, 194726, 24904, 0,
    194727, 24908, 0, 194728, 24910, 0, 194729, 24908, 0, 194730, 24954, 0, 194731, 24974, 0, 194732, 25010, 0,
    194733, 24996, 0, 194734, 25007, 0, 194735, 25054, 0, 194736, 25074, 0, 194737, 25078, 0, 194738, 25104, 0,
    194739, 25115, 0, 194740, 25181, 0, 194741, 25265, 0, 194742, 25300, 0, 194743, 25424, 0, 194744, 142092, 0,
    194745, 25405, 0, 194746, 25340, 0, 194747, 25448, 0, 194748, 25475, 0, 194749, 25572, 0, 194750, 142321, 0,
    194751, 25634, 0, 194752, 25541, 0, 194753, 25513, 0, 194754, 14894, 0, 194755, 25705, 0, 194756, 25726, 0,
    194757, 25757, 0, 194758, 25719, 0, 194759, 14956, 0, 194760, 25935, 0, 194761, 25964, 0, 194762, 143370, 0,
    194763, 26083, 0, 194764, 26360, 0, 194765, 26185, 0, 194766, 15129, 0, 194767, 26257, 0, 194768, 15112, 0,
    194769, 15076, 0, 194770, 20882, 0, 194771, 20885, 0, 194772, 26368, 0, 194773, 26268, 0, 194774, 32941, 0,
    194775, 17369, 0, 194776, 26391, 0, 194777, 26395, 0, 194778, 26401, 0, 194779, 26462, 0, 194780, 26451, 0,
    194781, 144323, 0, 194782, 15177, 0, 194783, 26618, 0, 194784, 26501, 0, 194785, 26706, 0, 194786, 26757, 0,
    194787, 144493, 0, 194788, 26766, 0, 194789, 26655, 0, 194790, 26900, 0, 194791, 15261, 0, 194792, 26946, 0,
    194793, 27043, 0, 194794, 27114, 0, 194795, 27304, 0, 194796, 145059, 0, 194797, 27355, 0, 194798, 15384, 0,
    194799, 27425, 0, 194800, 145575, 0, 194801, 27476, 0, 194802, 15438, 0, 194803, 27506, 0, 194804, 27551, 0,
    194805, 27578, 0, 194806, 27579, 0, 194807, 146061, 0, 194808, 138507, 0, 194809, 146170, 0, 194810, 27726, 0,
    194811, 146620, 0, 194812, 27839, 0, 194813, 27853, 0, 194814, 27751, 0, 194815, 27926, 0, 194816, 27966, 0,
    194817, 28023, 0, 194818, 27969, 0, 194819, 28009, 0, 194820, 28024, 0, 194821, 28037, 0, 194822, 146718, 0,
    194823, 27956, 0, 194824, 28207, 0, 194825, 28270, 0, 194826, 15667, 0, 194827, 28363, 0, 194828, 28359, 0,
    194829, 147153, 0, 194830, 28153, 0, 194831, 28526, 0, 194832, 147294, 0, 194833, 147342, 0, 194834, 28614, 0,
    194835, 28729, 0, 194836, 28702, 0, 194837, 28699, 0, 194838, 15766, 0, 194839, 28746, 0, 194840, 28797, 0,
    194841, 28791, 0, 194842, 28845, 0, 194843, 132389, 0, 194844, 28997, 0, 194845, 148067, 0, 194846, 29084, 0,
    194847, 148395, 0, 194848, 29224, 0, 194849, 29237, 0, 194850, 29264, 0, 194851, 149000, 0, 194852, 29312, 0,
    194853, 29333, 0, 194854, 149301, 0, 194855, 149524, 0, 194856, 29562, 0, 194857, 29579, 0, 194858, 16044, 0,
    194859, 29605, 0, 194860, 16056, 0, 194861, 16056, 0, 194862, 29767, 0, 194863, 29788, 0, 194864, 29809, 0,
    194865, 29829, 0, 194866, 29898, 0, 194867, 16155, 0, 194868, 29988, 0, 194869, 150582, 0, 194870, 30014, 0,
    194871, 150674, 0, 194872, 30064, 0, 194873, 139679, 0, 194874, 30224, 0, 194875, 151457, 0, 194876, 151480, 0,
    194877, 151620, 0, 194878, 16380, 0, 194879, 16392, 0, 194880, 30452, 0, 194881, 151795, 0, 194882, 151794, 0,
    194883, 151833, 0, 194884, 151859, 0, 194885, 30494, 0, 194886, 30495, 0, 194887, 30495, 0, 194888, 30538, 0,
    194889, 16441, 0, 194890, 30603, 0, 194891, 16454, 0, 194892, 16534, 0, 194893, 152605, 0, 194894, 30798, 0,
    194895, 30860, 0, 194896, 30924, 0, 194897, 16611, 0, 194898, 153126, 0, 194899, 31062, 0, 194900, 153242, 0,
    194901, 153285, 0, 194902, 31119, 0, 194903, 31211, 0, 194904, 16687, 0, 194905, 31296, 0, 194906, 31306, 0,
    194907, 31311, 0, 194908, 153980, 0, 194909, 154279, 0, 194910, 154279, 0, 194911, 31470, 0, 194912, 16898, 0,
    194913, 154539, 0, 194914, 31686, 0, 194915, 31689, 0, 194916, 16935, 0, 194917, 154752, 0, 194918, 31954, 0,
    194919, 17056, 0, 194920, 31976, 0, 194921, 31971, 0, 194922, 32000, 0, 194923, 155526, 0, 194924, 32099, 0,
    194925, 17153, 0, 194926, 32199, 0, 194927, 32258, 0, 194928, 32325, 0, 194929, 17204, 0, 194930, 156200, 0,
    194931, 156231, 0, 194932, 17241, 0, 194933, 156377, 0, 194934, 32634, 0, 194935, 156478, 0, 194936, 32661, 0,
    194937, 32762, 0, 194938, 32773, 0, 194939, 156890, 0, 194940, 156963, 0, 194941, 32864, 0, 194942, 157096, 0,
    194943, 32880, 0, 194944, 144223, 0, 194945, 17365, 0, 194946, 32946, 0, 194947, 33027, 0, 194948, 17419, 0,
    194949, 33086, 0, 194950, 23221, 0, 194951, 157607, 0, 194952, 157621, 0, 194953, 144275, 0, 194954, 144284, 0,
    194955, 33281, 0, 194956, 33284, 0, 194957, 36766, 0, 194958, 17515, 0, 194959, 33425, 0, 194960, 33419, 0,
    194961, 33437, 0, 194962, 21171, 0, 194963, 33457, 0, 194964, 33459, 0, 194965, 33469, 0, 194966, 33510, 0,
    194967, 158524, 0, 194968, 33509, 0, 194969, 33565, 0, 194970, 33635, 0, 194971, 33709, 0, 194972, 33571, 0,
    194973, 33725, 0, 194974, 33767, 0, 194975, 33879, 0, 194976, 33619, 0, 194977, 33738, 0, 194978, 33740, 0,
    194979, 33756, 0, 194980, 158774, 0, 194981, 159083, 0, 194982, 158933, 0, 194983, 17707, 0, 194984, 34033, 0,
    194985, 34035, 0, 194986, 34070, 0, 194987, 160714, 0, 194988, 34148, 0, 194989, 159532, 0, 194990, 17757, 0,
    194991, 17761, 0, 194992, 159665, 0, 194993, 159954, 0, 194994, 17771, 0, 194995, 34384, 0, 194996, 34396, 0,
    194997, 34407, 0, 194998, 34409, 0, 194999, 34473, 0, 195000, 34440, 0, 195001, 34574, 0, 195002, 34530, 0,
    195003, 34681, 0, 195004, 34600, 0, 195005, 34667, 0, 195006, 34694, 0, 195007, 17879, 0, 195008, 34785, 0,
    195009, 34817, 0, 195010, 17913, 0, 195011, 34912, 0, 195012, 34915, 0, 195013, 161383, 0, 195014, 35031, 0,
    195015, 35038, 0, 195016, 17973, 0, 195017, 35066, 0, 195018, 13499, 0, 195019, 161966, 0, 195020, 162150, 0,
    195021, 18110, 0, 195022, 18119, 0, 195023, 35488, 0, 195024, 35565, 0, 195025, 35722, 0, 195026, 35925, 0,
    195027, 162984, 0, 195028, 36011, 0, 195029, 36033, 0, 195030, 36123, 0, 195031, 36215, 0, 195032, 163631, 0,
    195033, 133124, 0, 195034, 36299, 0, 195035, 36284, 0, 195036, 36336, 0, 195037, 133342, 0, 195038, 36564, 0,
    195039, 36664, 0, 195040, 165330, 0, 195041, 165357, 0, 195042, 37012, 0, 195043, 37105, 0, 195044, 37137, 0,
    195045, 165678, 0, 195046, 37147, 0, 195047, 37432, 0, 195048, 37591, 0, 195049, 37592, 0, 195050, 37500, 0,
    195051, 37881, 0, 195052, 37909, 0, 195053, 166906, 0, 195054, 38283, 0, 195055, 18837, 0, 195056, 38327, 0,
    195057, 167287, 0, 195058, 18918, 0, 195059, 38595, 0, 195060, 23986, 0, 195061, 38691, 0, 195062, 168261, 0,
    195063, 168474, 0, 195064, 19054, 0, 195065, 19062, 0, 195066, 38880, 0, 195067, 168970, 0, 195068, 19122, 0,
    195069, 169110, 0, 195070, 38923, 0, 195071, 38923, 0, 195072, 38953, 0, 195073, 169398, 0, 195074, 39138, 0,
    195075, 19251, 0, 195076, 39209, 0, 195077, 39335, 0, 195078, 39362, 0, 195079, 39422, 0, 195080, 19406, 0,
    195081, 170800, 0, 195082, 39698, 0, 195083, 40000, 0, 195084, 40189, 0, 195085, 19662, 0, 195086, 19693, 0,
    195087, 40295, 0, 195088, 172238, 0, 195089, 19704, 0, 195090, 172293, 0, 195091, 172558, 0, 195092, 172689, 0,
    195093, 40635, 0, 195094, 19798, 0, 195095, 40697, 0, 195096, 40702, 0, 195097, 40709, 0, 195098, 40719, 0,
    195099, 40726, 0, 195100, 40763, 0, 195101, 173568, 0
};

static uint32_t tti_range_of(const uint32_t *table, size_t n, uint32_t c, int shift) {
    size_t low = 0, high = n;
    while (high - low > 1) {         /* the last range that begins at or before c */
        size_t middle = (low + high) / 2;
        if (table[middle] >> shift <= c) { low = middle; } else { high = middle; }
    }
    return table[low];
}
static int tti_class_in(uint32_t range, uint32_t c) {
    int k = (int)(range & 7);
    return k != TTI_CASED ? k : (c - (range >> 3)) & 1 ? TTI_LOWER : TTI_UPPER;
}
static int tti_char_class(uint32_t c) {
    return c > 0x10FFFF ? TTI_OTHER : tti_class_in(tti_range_of(tti_unicode, sizeof tti_unicode / sizeof *tti_unicode, c, 3), c);
}
static uint32_t tti_combining_class(uint32_t c) {
    return tti_range_of(tti_combining, sizeof tti_combining / sizeof *tti_combining, c, 8) & 0xFF;
}
/* The row {c, a, b} of a table of decompositions, or NULL. */
static const uint32_t *tti_decomposition(const uint32_t *table, size_t n, uint32_t c) {
    size_t low = 0, high = n / 3;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[3 * middle] < c) { low = middle + 1; } else { high = middle; }
    }
    return low < n / 3 && table[3 * low] == c ? table + 3 * low : NULL;
}
/* \w of Rust's regular expressions: what "single_word" looks at. */
static int tti_is_word(uint32_t c) {
    static const uint32_t more[][2] = {{0x5F, 0x5F}, {0x200C, 0x200D}, {0x203F, 0x2040}, {0x2054, 0x2054}, {0x24B6, 0x24E9},
        {0xFE33, 0xFE34}, {0xFE4D, 0xFE4F}, {0xFF3F, 0xFF3F}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};
    size_t i;
    int k = tti_char_class(c);
    if (k == TTI_NUMBER) {
        for (i = 0; i < sizeof tti_other_numbers / sizeof *tti_other_numbers; i += 2) {
            if (c >= tti_other_numbers[i] && c <= tti_other_numbers[i + 1]) { return 0; }
        }
        return 1;
    }
    for (i = 0; i < sizeof more / sizeof *more; i++) { if (c >= more[i][0] && c <= more[i][1]) { return 1; } }
    return (TTI_LETTERS | (1u << TTI_MARK)) >> k & 1;
}

/* One byte for each code point below 2^16: its class, and whether NFC may change it or what stands before it. */
#define TTI_MAP ((size_t)1 << 16)
#define TTI_UNSAFE 8
static void tti_map_fill(unsigned char *map, int nfc) {
    size_t i, n = sizeof tti_unicode / sizeof *tti_unicode;
    uint32_t c = 0;
    for (i = 0; i < n && c < TTI_MAP; i++) {
        uint32_t end = i + 1 < n ? tti_unicode[i + 1] >> 3 : 0x110000;
        for (; c < end && c < TTI_MAP; c++) { map[c] = (unsigned char)tti_class_in(tti_unicode[i], c); }
    }
    if (!nfc) { return; }
    for (c = 0; c < TTI_MAP; c++) { if (tti_combining_class(c)) { map[c] |= TTI_UNSAFE; } }
    for (i = 0; i < sizeof tti_one_way / sizeof *tti_one_way; i += 3) { if (tti_one_way[i] < TTI_MAP) { map[tti_one_way[i]] |= TTI_UNSAFE; } }
    for (i = 0; i < sizeof tti_composed / sizeof *tti_composed; i += 3) { if (tti_composed[i + 2] < TTI_MAP) { map[tti_composed[i + 2]] |= TTI_UNSAFE; } }
    for (c = 0x1161; c <= 0x1175; c++) { map[c] |= TTI_UNSAFE; }      /* Hangul vowels and final consonants */
    for (c = 0x11A8; c <= 0x11C2; c++) { map[c] |= TTI_UNSAFE; }
}

/* GPT-2 writes byte b as character b where that is printable Latin-1, the other 68 bytes as U+0100 and up. */
static int tti_printable(int c) { return (c > 32 && c < 127) || (c > 160 && c < 256 && c != 173); }
static int tti_byte_char(int b) { return tti_printable(b) ? b : b <= 32 ? 256 + b : b < 173 ? 289 + b - 127 : 323; }
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
        int c = tti_byte_char((unsigned char)bytes[i]);
        char utf8[2];
        utf8[0] = (char)(c < 128 ? c : 0xC0 | (c >> 6));
        utf8[1] = (char)(0x80 | (c & 0x3F));
        status = tt_text_append(out, utf8, c < 128 ? 1 : 2);
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
        if (tti_char_byte(c) < 0) { *valid = 0; break; }
        byte = (char)tti_char_byte(c);
        status = tt_text_append(out, &byte, 1);
    }
    return status;
}

/* ---- pre-tokenizers ----
 * Each pattern is written out by hand: a function that is given the beginning of a piece and returns its end. */
#define TTI_PRETOKENIZE_MARKS 100        /* beside tt_pretokenizer: Llama 2, no pattern; see tti_piece_marks */
#define TTI_PRETOKENIZE_EACH_MARK 101    /* Metaspace with "split": each U+2581 begins a piece               */
#define TTI_WORD_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TTI_WORD_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define TTI_CAPITAL_1 "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define TTI_CAPITAL_2 "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define TTI_CAPITAL_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* Patterns of a Split as the files write them; the first of a kind is what is saved. */
static const struct { tt_pretokenizer kind; const char *pattern; } tti_patterns[] = {
    {TT_PRETOKENIZE_WHITESPACE, " ?\\S+|\\s+(?!\\S)|\\s+"},
    {TT_PRETOKENIZE_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {TT_PRETOKENIZE_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {TT_PRETOKENIZE_LLAMA3, TTI_WORD_HEAD "\\p{N}{1,3}" TTI_WORD_TAIL},
    {TT_PRETOKENIZE_QWEN2, TTI_WORD_HEAD "\\p{N}" TTI_WORD_TAIL},
    {TT_PRETOKENIZE_CL100K, TTI_WORD_HEAD "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+\\z|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {TT_PRETOKENIZE_O200K, TTI_CAPITAL_1 "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" TTI_CAPITAL_2 "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}" TTI_CAPITAL_TAIL},
    {TT_PRETOKENIZE_TEKKEN, TTI_CAPITAL_1 "|" TTI_CAPITAL_2 "|\\p{N}" TTI_CAPITAL_TAIL}};

/* hit: the end was looked at, so that the piece may go on where the text goes on. */
typedef struct tti_scanner { const unsigned char *map; const char *end; int hit; } tti_scanner;

static int tti_class_at(tti_scanner *s, const char *at, size_t *size) {
    unsigned char first = (unsigned char)*at;
    uint32_t c;
    *size = 1;
    if (first < 0x80) { return s->map[first] & 7; }
    *size = tti_utf8(at, s->end, &c);
    if (c < TTI_MAP) { return s->map[c] & 7; }
    if (c == UINT32_MAX && s->end - at < 4) { s->hit = 1; }       /* perhaps cut off */
    return tti_char_class(c);
}
/* End of the run of characters whose class is in the set. */
static const char *tti_class_run(tti_scanner *s, const char *at, unsigned set) {
    while (at < s->end) {
        size_t size;
        if (!(set >> tti_class_at(s, at, &size) & 1)) { return at; }
        at += size;
    }
    s->hit = 1;
    return at;
}
static int tti_in(tti_scanner *s, const char *at, unsigned set) {
    size_t size;
    if (at >= s->end) { s->hit = 1; return 0; }
    return set >> tti_class_at(s, at, &size) & 1;
}
/* Length of 's 't 're 've 'm 'll 'd, or 0. With any_case also of 'S and the like; the long s, U+017F, is a case of s. */
static size_t tti_contraction(tti_scanner *s, const char *at, int any_case) {
    size_t left = (size_t)(s->end - at);
    char a, b;
    if (left < 4) { s->hit = 1; }
    if (left < 2 || at[0] != '\'') { return 0; }
    a = any_case ? (char)(at[1] | 32) : at[1];
    if (any_case && (at[1] < 'A' || at[1] > 'z')) { return left > 2 && memcmp(at + 1, "\xC5\xBF", 2) == 0 ? 3 : 0; }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') { return 2; }
    if (left < 3 || (any_case && (at[2] < 'A' || at[2] > 'z'))) { return 0; }
    b = any_case ? (char)(at[2] | 32) : at[2];
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}
static const char *tti_digits(tti_scanner *s, const char *at, int most) {
    while (most-- > 0 && tti_in(s, at, 1u << TTI_NUMBER)) {
        size_t size;
        tti_class_at(s, at, &size);
        at += size;
    }
    return at;
}
/* [stop at ...) is white space up to `stop`: \s+(?!\S)|\s+ leaves the last character to the next piece, unless the
 * text ends or it is the only one. */
static const char *tti_leave_last(const char *at, const char *stop, const char *end) {
    const char *last = stop - 1;
    if (stop == end) { return stop; }
    while (last > at && ((unsigned char)*last & 0xC0) == 0x80) { last--; }
    return last > at ? last : stop;
}
/* \s*[\r\n]+|\s+(?!\S)|\s+ */
static const char *tti_piece_space(tti_scanner *s, const char *at) {
    const char *stop = tti_class_run(s, at, TTI_SPACES), *line = stop;
    while (line > at && line[-1] != '\r' && line[-1] != '\n') { line--; }
    return line > at ? line : tti_leave_last(at, stop, s->end);
}
/* ' ?\S+' of the symbols [^\s\p{L}\p{N}], and the characters of `tail` behind them; NULL if there is none. */
static const char *tti_piece_symbols(tti_scanner *s, const char *at, const char *tail) {
    const char *start = at + (*at == ' '), *stop;
    if (!tti_in(s, start, TTI_SYMBOLS)) { return NULL; }
    stop = tti_class_run(s, start, TTI_SYMBOLS);
    while (stop < s->end && *stop && strchr(tail, *stop)) { stop++; }
    if (stop == s->end) { s->hit = 1; }
    return stop;
}
/* GPT-2's pattern, alternatives in order: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * that is a contraction, a run of one class with at most one space before it, or white space. apart: the text was
 * split at every digit before, and ends there. */
static const char *tti_piece_gpt2(tti_scanner *s, const char *at, int apart) {
    static const unsigned sets[] = {TTI_SYMBOLS, TTI_LETTERS, 1u << TTI_NUMBER, TTI_SPACES, TTI_LETTERS, TTI_LETTERS, TTI_SYMBOLS};
    const char *start = at + (*at == ' ' && s->end - at > 1), *stop;
    size_t size = *at == '\'' ? tti_contraction(s, at, 0) : 0;
    int k;
    if (size) { return at + size; }
    k = tti_class_at(s, start, &size);
    if (k == TTI_NUMBER && apart && start == at) { return at + size; }
    if (k != TTI_SPACE && !(k == TTI_NUMBER && apart)) { return tti_class_run(s, start, sets[k]); }
    stop = tti_class_run(s, at, TTI_SPACES);
    return apart && tti_in(s, stop, 1u << TTI_NUMBER) ? stop : tti_leave_last(at, stop, s->end);
}
/* ' ?\S+|\s+(?!\S)|\s+' */
static const char *tti_piece_whitespace(tti_scanner *s, const char *at) {
    const char *start = at + (*at == ' ' && s->end - at > 1);
    if (!tti_in(s, start, TTI_SPACES)) { return tti_class_run(s, start, ~TTI_SPACES); }
    return tti_leave_last(at, tti_class_run(s, at, TTI_SPACES), s->end);
}
/* (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|, with at_end \s+$|, then as above. */
static const char *tti_piece_llama3(tti_scanner *s, const char *at, int digits, int at_end) {
    size_t size = *at == '\'' ? tti_contraction(s, at, 1) : 0;
    const char *stop;
    int k;
    if (size) { return at + size; }
    k = tti_class_at(s, at, &size);
    if (TTI_LETTERS >> k & 1) { return tti_class_run(s, at, TTI_LETTERS); }
    if (k == TTI_NUMBER) { return tti_digits(s, at, digits); }
    if (*at != '\r' && *at != '\n' && tti_in(s, at + size, TTI_LETTERS)) { return tti_class_run(s, at + size, TTI_LETTERS); }
    stop = tti_piece_symbols(s, at, "\r\n");
    if (stop) { return stop; }
    return at_end && tti_class_run(s, at, TTI_SPACES) == s->end ? s->end : tti_piece_space(s, at);
}
/* Capital: [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], small: [\p{Ll}\p{Lm}\p{Lo}\p{M}]; letters without case and marks are both.
 * capital* small+: the capitals take what they can, and if no small letter follows they give back up to the last
 * character that is both. NULL if there is none. */
#define TTI_BOTH ((1u << TTI_LETTER) | (1u << TTI_MARK))
#define TTI_CAPITALS (TTI_BOTH | (1u << TTI_UPPER))
#define TTI_SMALLS (TTI_BOTH | (1u << TTI_LOWER))
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
/* [^\r\n\p{L}\p{N}]?capital*small+(?i:'s|...)?|[^\r\n\p{L}\p{N}]?capital+small*(?i:'s|...)?|\p{N}{1,digits}
 * | ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static const char *tti_piece_o200k(tti_scanner *s, const char *at, int digits, int contractions) {
    size_t size;
    int k = tti_class_at(s, at, &size), prefix = (TTI_SYMBOLS | TTI_SPACES) >> k & 1 && *at != '\r' && *at != '\n';
    const char *word = prefix ? at + size : at, *stop;
    if (k == TTI_NUMBER) { return tti_digits(s, at, digits); }
    stop = tti_word_small(s, word);
    if (!stop && prefix) { stop = tti_word_small(s, at); }
    if (!stop) { stop = tti_word_capital(s, word); }
    if (stop) {
        if (stop == s->end) { s->hit = 1; }
        return contractions ? stop + tti_contraction(s, stop, 1) : stop;
    }
    stop = tti_piece_symbols(s, at, "\r\n/");
    return stop ? stop : tti_piece_space(s, at);
}
/* Where no token holds a mark U+2581 (a space) behind anything else, no merge crosses the place before such a mark.
 * each: marks side by side are pieces of their own. */
static const char *tti_piece_marks(tti_scanner *s, const char *at, int each) {
    const char *end = s->end;
    while (end - at >= 3 && memcmp(at, TTI_SPACE_MARK, 3) == 0) { at += 3; if (each) { break; } }
    while (at < end) {
        const char *mark = (const char *)memchr(at, TTI_SPACE_MARK[0], (size_t)(end - at));
        if (!mark || end - mark < 3) { return end; }
        if (memcmp(mark, TTI_SPACE_MARK, 3) == 0) { return mark; }
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
    default: s->hit = 1; return s->end;
    }
}

/* ---- workers ---- */
#define TTI_CACHED_BYTES 24
#define TTI_CACHED_IDS 8
#define TTI_CACHE_BITS 14
typedef struct tti_cached { uint64_t words[3]; int32_t size, n, ids[TTI_CACHED_IDS]; } tti_cached;   /* 64 bytes; size 0 = free */
typedef struct tti_link { int32_t id; uint32_t rank, previous, next; } tti_link;    /* rank of (this, next) */
typedef struct tti_bytes { char *data; size_t size, capacity; } tti_bytes;
typedef struct tti_found { size_t at; int32_t id, size; } tti_found;
typedef struct tti_bpe_worker {
    tt_context *ctx;
    tti_cached *cache;               /* [1 << TTI_CACHE_BITS], from a piece to its ids; made when first needed */
    tti_link *links;                 /* of the longest piece so far                                            */
    uint64_t *heap;
    int32_t *symbols;
    uint32_t *chars;                 /* NFC: characters of one stretch                                         */
    size_t links_capacity, heap_capacity, symbols_capacity, chars_capacity;
    tti_bytes normal, prefixed;
    tti_found *found;                /* added tokens in what is being encoded, the first one last              */
    size_t n_found, found_capacity;
    tt_ids ids;                      /* of a batch                                                             */
} tti_bpe_worker;

/* Several workers may need memory at once; a context serves one thread at a time. */
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
    tt_free(w->ctx, w->cache, w->cache ? (size_t)1 << TTI_CACHE_BITS : 0, sizeof *w->cache);
    tt_free(w->ctx, w->links, w->links_capacity, sizeof *w->links);
    tt_free(w->ctx, w->heap, w->heap_capacity, sizeof *w->heap);
    tt_free(w->ctx, w->symbols, w->symbols_capacity, sizeof *w->symbols);
    tt_free(w->ctx, w->chars, w->chars_capacity, sizeof *w->chars);
    tt_free(w->ctx, w->normal.data, w->normal.capacity, 1);
    tt_free(w->ctx, w->prefixed.data, w->prefixed.capacity, 1);
    tt_free(w->ctx, w->found, w->found_capacity, sizeof *w->found);
    tt_ids_free(&w->ids);
}

/* ---- NFC (Unicode Standard Annex 15) ----
 * Most text is NFC already. A character is unsafe if NFC may change it or join it to the one before; a stretch is a
 * character with the unsafe ones behind it, and only stretches are decomposed, ordered and composed. */
#define TTI_HANGUL 0xAC00u           /* syllables: ((initial * 21) + vowel) * 28 + final */
#define TTI_N_HANGUL 11172u
static int tti_unsafe(const unsigned char *map, uint32_t c) {
    size_t i = sizeof tti_composed / sizeof *tti_composed;
    if (c < TTI_MAP) { return map[c] & TTI_UNSAFE; }
    if (c > 0x10FFFF) { return 0; }
    if (tti_combining_class(c) || tti_decomposition(tti_one_way, sizeof tti_one_way / sizeof *tti_one_way, c)) { return 1; }
    for (; tti_composed[i - 3] >= TTI_MAP; i -= 3) { if (tti_composed[i - 1] == c) { return 1; } }
    return 0;
}
/* A character of a stretch: combining class << 21 | code point. */
static tt_status tti_nfd_put(tti_bpe_worker *w, size_t *n, uint32_t c) {
    const uint32_t *row;
    if (c - TTI_HANGUL < TTI_N_HANGUL) {
        uint32_t s = c - TTI_HANGUL;
        tt_status status = tti_nfd_put(w, n, 0x1100 + s / 588);
        if (status == TT_OK) { status = tti_nfd_put(w, n, 0x1161 + s % 588 / 28); }
        return status == TT_OK && s % 28 ? tti_nfd_put(w, n, 0x11A7 + s % 28) : status;
    }
    row = tti_decomposition(tti_composed, sizeof tti_composed / sizeof *tti_composed, c);
    if (!row) { row = tti_decomposition(tti_one_way, sizeof tti_one_way / sizeof *tti_one_way, c); }
    if (row) {                                       /* at most four deep */
        tt_status status = tti_nfd_put(w, n, row[1]);
        return status == TT_OK && row[2] ? tti_nfd_put(w, n, row[2]) : status;
    }
    if (tti_worker_grow(w, &w->chars, &w->chars_capacity, *n + 1, sizeof *w->chars) != TT_OK) { return TT_ERR_MEM; }
    w->chars[(*n)++] = tti_combining_class(c) << 21 | c;
    return TT_OK;
}
/* Canonical ordering: marks in a row by class, equal classes as they stood. Long rows by counting, for speed. */
static tt_status tti_nfc_order(tti_bpe_worker *w, size_t n) {
    size_t begin, end, i, k;
    for (begin = 0; begin < n; begin = end + 1) {
        size_t count;
        for (end = begin; end < n && w->chars[end] >> 21; end++) { }
        count = end - begin;
        if (count > 32) {
            uint32_t kind;
            if (tti_worker_grow(w, &w->chars, &w->chars_capacity, n + count, sizeof *w->chars) != TT_OK) { return TT_ERR_MEM; }
            for (k = n, kind = 1; kind < 256; kind++) {
                for (i = begin; i < end; i++) { if (w->chars[i] >> 21 == kind) { w->chars[k++] = w->chars[i]; } }
            }
            memcpy(w->chars + begin, w->chars + n, count * sizeof *w->chars);
            continue;
        }
        for (i = begin + 1; i < end; i++) {
            uint32_t c = w->chars[i];
            for (k = i; k > begin && w->chars[k - 1] >> 21 > c >> 21; k--) { w->chars[k] = w->chars[k - 1]; }
            w->chars[k] = c;
        }
    }
    return TT_OK;
}
/* a and b in one character, or 0. */
static uint32_t tti_nfc_pair(const tti_pair_map *compose, uint32_t a, uint32_t b) {
    int32_t c;
    if (a - 0x1100 < 19 && b - 0x1161 < 21) { return TTI_HANGUL + ((a - 0x1100) * 21 + b - 0x1161) * 28; }
    if (a - TTI_HANGUL < TTI_N_HANGUL && (a - TTI_HANGUL) % 28 == 0 && b - 0x11A8 < 27) { return a + b - 0x11A7; }
    c = tti_pair_find(compose, (int32_t)a, (int32_t)b);
    return c < 0 ? 0 : (uint32_t)c;
}
/* Joins each character to the last starter, unless one of the same or a higher class stands between. */
static size_t tti_nfc_compose(const tti_pair_map *compose, uint32_t *chars, size_t n) {
    const uint32_t code = 0x1FFFFF;
    size_t i, kept = 0, starter = SIZE_MAX;
    for (i = 0; i < n; i++) {
        uint32_t c = chars[i], joined = 0;
        if (starter != SIZE_MAX && (kept == starter + 1 || (chars[kept - 1] >> 21 < c >> 21))) {
            joined = tti_nfc_pair(compose, chars[starter] & code, c & code);
        }
        if (joined) { chars[starter] = joined; continue; }
        if (!(c >> 21)) { starter = kept; }
        chars[kept++] = c;
    }
    return kept;
}
static tt_status tti_nfc_stretch(const tti_pair_map *compose, tti_bpe_worker *w, const char *at, const char *end, tti_bytes *out) {
    size_t n = 0, i;
    tt_status status = TT_OK;
    while (at < end && status == TT_OK) {
        uint32_t c;
        at += tti_utf8(at, end, &c);
        status = tti_nfd_put(w, &n, c);
    }
    if (status == TT_OK) { status = tti_nfc_order(w, n); }
    if (status != TT_OK) { return status; }
    n = tti_nfc_compose(compose, w->chars, n);
    for (i = 0; i < n && status == TT_OK; i++) {
        char utf8[4];
        status = tti_bytes_append(w, out, utf8, tti_utf8_put(w->chars[i] & 0x1FFFFF, utf8));
    }
    return status;
}
/* Appends the NFC of [at, end) to out, or sets *same if it is the text itself. Invalid bytes stay as they are. */
static tt_status tti_nfc(const unsigned char *map, const tti_pair_map *compose, tti_bpe_worker *w, const char *at, const char *end, tti_bytes *out, int *same) {
    const char *copied = at, *base = NULL, *stretch;
    tt_status status = TT_OK;
    *same = 0;
    while (at < end && status == TT_OK) {
        uint32_t c;
        size_t size;
        if ((unsigned char)*at < 0x80) { base = at++; continue; }
        size = tti_utf8(at, end, &c);
        if (!tti_unsafe(map, c)) {
            base = c == UINT32_MAX ? NULL : at;
            at += size;
            continue;
        }
        stretch = base ? base : at;
        for (at += size; at < end; at += size) {
            size = tti_utf8(at, end, &c);
            if (!tti_unsafe(map, c)) { break; }
        }
        status = tti_bytes_append(w, out, copied, (size_t)(stretch - copied));
        if (status == TT_OK) { status = tti_nfc_stretch(compose, w, stretch, at, out); }
        copied = at;
        base = NULL;
    }
    if (status == TT_OK && out->size == 0) { *same = 1; return TT_OK; }
    return status == TT_OK ? tti_bytes_append(w, out, copied, (size_t)(end - copied)) : status;
}

/* ---- the tokenizer ---- */
enum { TTI_USED = 1, TTI_ADDED = 2, TTI_SPECIAL = 4, TTI_IN_MODEL = 8, TTI_NORMALIZED = 16, TTI_LSTRIP = 32, TTI_RSTRIP = 64,
       TTI_WHOLE = 128,              /* the token's own bytes encode to exactly this token */
       TTI_SINGLE = 256,             /* "single_word"                                      */
       TTI_BYTE = 512 };             /* <0x41>: the byte 0x41, SentencePiece's kind only   */
typedef struct tti_token { size_t begin, size; int flags; } tti_token;    /* bytes in added if TTI_ADDED, else in vocab */
typedef struct tti_merge { int32_t left, right, result; } tti_merge;
/* A tree of the added tokens, read from their ends: children of a branch are its child and that one's siblings. fail: the
 * longest branch with which what has been read ends elsewhere in the tree (Aho and Corasick 1975). */
typedef struct tti_branch {
    int32_t id, size;                /* the longest token that ends the bytes read, -1 = none */
    int32_t child, sibling, fail;
    unsigned char byte;
} tti_branch;
#define TTI_MAX_TEMPLATE 8

/* SentencePiece's kind: what puts U+2581 in the place of spaces and before the text. The normalizer does so in each section
 * between added tokens; Metaspace, behind it, before each section (or the first, or none) that has no space there already. */
typedef enum tti_marks { TTI_MARKS_NONE, TTI_MARKS_NORMALIZER, TTI_MARKS_ALWAYS, TTI_MARKS_FIRST, TTI_MARKS_NEVER } tti_marks;
static const char *const tti_prepend_schemes[] = {"always", "first", "never"};      /* from TTI_MARKS_ALWAYS on */

struct tt_tokenizer {
    tt_context *ctx;
    int pretokenizer;                /* a tt_pretokenizer, or TTI_PRETOKENIZE_... */
    tti_marks characters;            /* not 0: SentencePiece's kind, tokens are texts, not bytes in GPT-2's mapping */
    int strip;                       /* decoding takes one space off at the start   */
    int ignore_merges;               /* a piece that is a token is taken whole          */
    int nfc, prefix_space;           /* prefix_space: "add_prefix_space" of ByteLevel   */
    int refuse;                      /* TT_REFUSE_                                      */
    tti_dict vocab, added;           /* bytes to id                                     */
    tti_token *tokens;               /* [n_tokens]; ids may have holes                  */
    size_t n_tokens, tokens_capacity;
    tti_merge *merges;               /* in the order of their rank                      */
    size_t n_merges, merges_capacity;
    tti_pair_map ranks, compose;     /* compose: NFC's pairs of characters              */
    int32_t byte_id[256];            /* -1 = this byte has no token                     */
    tti_branch *branches;            /* of added tokens; the first two are roots        */
    size_t n_branches, branches_capacity;
    int32_t roots[2][256];           /* by last byte, 0 = none: [0] cut from the raw text, [1] "normalized" */
    unsigned char *map;              /* [TTI_MAP] */
    int32_t before[TTI_MAX_TEMPLATE], after[TTI_MAX_TEMPLATE];     /* tokens around a document */
    int n_before, n_after;
    tti_bpe_worker *workers;             /* [n_workers], one per thread of the context      */
    int n_workers;
};

static tt_tokenizer *tti_tokenizer_create(tt_context *ctx) {
    tt_tokenizer *t = (tt_tokenizer *)tt_alloc(ctx, 1, sizeof *t);
    int i;
    if (!t) { return NULL; }
    t->ctx = t->vocab.bytes.ctx = t->added.bytes.ctx = ctx;
    t->refuse = TT_REFUSE_BYTES;
    t->map = (unsigned char *)tt_alloc(ctx, TTI_MAP, 1);
    t->n_workers = ctx->n_threads > 0 ? ctx->n_threads : 1;
    t->workers = (tti_bpe_worker *)tt_alloc(ctx, (size_t)t->n_workers, sizeof *t->workers);
    for (i = 0; t->workers && i < t->n_workers; i++) { t->workers[i].ctx = t->workers[i].ids.ctx = ctx; }
    if (!t->map || !t->workers) { tt_tokenizer_destroy(t); return NULL; }
    tti_map_fill(t->map, 0);
    return t;
}
TT_API void tt_tokenizer_destroy(tt_tokenizer *t) {
    int i;
    if (!t) { return; }
    for (i = 0; t->workers && i < t->n_workers; i++) { tti_worker_free(&t->workers[i]); }
    tt_free(t->ctx, t->workers, (size_t)t->n_workers, sizeof *t->workers);
    tt_free(t->ctx, t->map, TTI_MAP, 1);
    tti_dict_free(&t->vocab);
    tti_dict_free(&t->added);
    tt_free(t->ctx, t->tokens, t->tokens_capacity, sizeof *t->tokens);
    tt_free(t->ctx, t->merges, t->merges_capacity, sizeof *t->merges);
    tt_free(t->ctx, t->ranks.slots, t->ranks.n_slots, sizeof *t->ranks.slots);
    tt_free(t->ctx, t->compose.slots, t->compose.n_slots, sizeof *t->compose.slots);
    tt_free(t->ctx, t->branches, t->branches_capacity, sizeof *t->branches);
    tt_free(t->ctx, t, 1, sizeof *t);
}
static const char *tti_token_bytes(const tt_tokenizer *t, const tti_token *token) {
    return (token->flags & TTI_ADDED ? t->added.bytes.data : t->vocab.bytes.data) + token->begin;
}
/* The table entry of an id, which is made if it is not there yet. */
static tti_token *tti_token_slot(tt_tokenizer *t, int32_t id) {
    void *tokens = t->tokens;
    if (tti_grow(t->ctx, &tokens, &t->tokens_capacity, (size_t)id + 1, sizeof *t->tokens) != TT_OK) { return NULL; }
    t->tokens = (tti_token *)tokens;
    if (t->n_tokens < (size_t)id + 1) { t->n_tokens = (size_t)id + 1; }
    return &t->tokens[id];
}
static tt_status tti_token_add(tt_tokenizer *t, int32_t id, const char *bytes, size_t size) {
    tti_token *token = tti_token_slot(t, id);
    const tti_word *word = token ? tti_dict_add(&t->vocab, bytes, size, id) : NULL;
    if (!word) { return TT_ERR_MEM; }
    token->begin = word->begin;
    token->size = size;
    token->flags = TTI_USED | TTI_IN_MODEL;
    return TT_OK;
}
static tt_status tti_added_add(tt_tokenizer *t, int32_t id, const char *content, size_t size, int flags) {
    tti_token *token = tti_token_slot(t, id);
    const tti_word *word = token ? tti_dict_add(&t->added, content, size, id) : NULL;
    if (!word) { return TT_ERR_MEM; }
    token->begin = word->begin;
    token->size = size;
    token->flags = flags | TTI_USED | TTI_ADDED;
    return TT_OK;
}
static int32_t tti_branch_child(const tt_tokenizer *t, int32_t at, char byte) {
    int32_t k;
    if (at < 2) { return t->roots[at][(unsigned char)byte]; }
    k = t->branches[at].child;
    while (k && t->branches[k].byte != (unsigned char)byte) { k = t->branches[k].sibling; }
    return k;
}
static tt_status tti_branch_grow(tt_tokenizer *t, size_t n) {
    void *branches = t->branches;
    if (n > (size_t)INT32_MAX) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: added_tokens have more than 2^31 bytes"); }
    if (tti_grow(t->ctx, &branches, &t->branches_capacity, n, sizeof *t->branches) != TT_OK) { return TT_ERR_MEM; }
    t->branches = (tti_branch *)branches;
    for (; t->n_branches < n; t->n_branches++) { t->branches[t->n_branches].id = -1; }
    return TT_OK;
}
/* Enters the bytes under which an added token is found; of equal ones the first stays. */
static tt_status tti_branch_add(tt_tokenizer *t, int level, const char *bytes, size_t size, int32_t id) {
    int32_t at = level;
    size_t i;
    for (i = size; i-- > 0; ) {
        int32_t child = tti_branch_child(t, at, bytes[i]);
        if (child) { at = child; continue; }
        child = (int32_t)t->n_branches;
        if (tti_branch_grow(t, t->n_branches + 1) != TT_OK) { return tt_error_status(t->ctx); }
        t->branches[child].byte = (unsigned char)bytes[i];
        t->branches[child].sibling = t->branches[at].child;
        t->branches[at].child = child;
        if (at == level) { t->roots[level][(unsigned char)bytes[i]] = child; }
        at = child;
    }
    if (t->branches[at].id < 0) {
        t->branches[at].id = id;
        t->branches[at].size = (int32_t)size;
    }
    return TT_OK;
}
/* Breadth first, so that what a branch falls back to is known before its children ask. */
static tt_status tti_branches_link(tt_tokenizer *t) {
    int32_t *queue = (int32_t *)tt_alloc(t->ctx, t->n_branches, sizeof *queue), at, child;
    size_t n = 2, i;
    if (!queue) { return TT_ERR_MEM; }
    t->branches[1].fail = 1;
    queue[1] = 1;
    for (i = 0; i < n; i++) {
        at = queue[i];
        for (child = t->branches[at].child; child; child = t->branches[child].sibling) {
            int32_t fail = t->branches[at].fail, next = 0;
            while (at > 1 && !(next = tti_branch_child(t, fail, (char)t->branches[child].byte)) && fail > 1) { fail = t->branches[fail].fail; }
            t->branches[child].fail = next ? next : fail;
            if (t->branches[child].id < 0) {
                t->branches[child].id = t->branches[t->branches[child].fail].id;
                t->branches[child].size = t->branches[t->branches[child].fail].size;
            }
            queue[n++] = child;
        }
    }
    tt_free(t->ctx, queue, t->n_branches, sizeof *queue);
    return TT_OK;
}
static tt_status tti_merge_add(tt_tokenizer *t, int32_t left, int32_t right, int32_t result) {
    void *merges = t->merges;
    tti_merge *merge;
    if (tti_grow(t->ctx, &merges, &t->merges_capacity, t->n_merges + 1, sizeof *merge) != TT_OK) { return TT_ERR_MEM; }
    t->merges = (tti_merge *)merges;
    if (tti_pair_add(t->ctx, &t->ranks, left, right, (int32_t)t->n_merges) != TT_OK) { return TT_ERR_MEM; }
    merge = &t->merges[t->n_merges++];
    merge->left = left;
    merge->right = right;
    merge->result = result;
    return TT_OK;
}

TT_API int tt_vocab_size(const tt_tokenizer *t) { return (int)t->n_tokens; }
TT_API int tt_token_id(const tt_tokenizer *t, const char *text) {
    size_t size = strlen(text), i;
    const tti_word *word = tti_dict_find(&t->added, text, size);
    if (!word && t->characters && strchr(text, ' ')) {
        char key[3 * 256];
        size_t n = 0;
        for (i = 0; i < size && n + 3 <= sizeof key; i++) {
            if (text[i] == ' ') { memcpy(key + n, TTI_SPACE_MARK, 3); n += 3; } else { key[n++] = text[i]; }
        }
        word = i == size ? tti_dict_find(&t->vocab, key, n) : NULL;
    }
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
        if (t->workers[i].cache) { memset(t->workers[i].cache, 0, ((size_t)1 << TTI_CACHE_BITS) * sizeof *t->workers[i].cache); }
    }
}

/* ---- merging ---- */
/* ids: the piece's symbols, n <= TTI_SHORT_PIECE. Merges in place and returns how many are left. */
static size_t tti_merge_short(const tt_tokenizer *t, int32_t *ids, size_t n) {
    uint32_t ranks[TTI_SHORT_PIECE];        /* of (ids[i], ids[i + 1]); UINT32_MAX = no rule, also at the end */
    size_t i;
    for (i = 0; i < n; i++) { ranks[i] = i + 1 < n ? (uint32_t)tti_pair_find(&t->ranks, ids[i], ids[i + 1]) : UINT32_MAX; }
    while (n > 0) {
        size_t best = 0;
        for (i = 1; i < n; i++) { if (ranks[i] < ranks[best]) { best = i; } }
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

/* Long pieces: a linked list of tokens and a heap of mergeable pairs, each rank * 2^32 + position, so that the
 * least is the lowest rank and of these the leftmost. A pair that has changed since is skipped when it comes up. */
typedef struct tti_chain { const tt_tokenizer *t; tti_link *links; uint64_t *heap; size_t n_heap; } tti_chain;

static void tti_chain_push(tti_chain *chain, uint32_t at) {
    tti_link *link = &chain->links[at];
    uint64_t pair;
    size_t i;
    link->rank = UINT32_MAX;
    if (link->next == TTI_NOWHERE) { return; }
    link->rank = (uint32_t)tti_pair_find(&chain->t->ranks, link->id, chain->links[link->next].id);
    if (link->rank == UINT32_MAX) { return; }
    pair = ((uint64_t)link->rank << 32) | at;
    for (i = chain->n_heap++; i > 0 && chain->heap[(i - 1) / 2] > pair; i = (i - 1) / 2) { chain->heap[i] = chain->heap[(i - 1) / 2]; }
    chain->heap[i] = pair;
}
static uint64_t tti_chain_pop(tti_chain *chain) {
    uint64_t least = chain->heap[0], last = chain->heap[--chain->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < chain->n_heap) {
        if (child + 1 < chain->n_heap && chain->heap[child + 1] < chain->heap[child]) { child++; }
        if (chain->heap[child] >= last) { break; }
        chain->heap[i] = chain->heap[child];
        i = child;
    }
    chain->heap[i] = last;
    return least;
}
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
/* Merges in place and sets *n to how many are left. */
static tt_status tti_merge_long(const tt_tokenizer *t, tti_bpe_worker *w, int32_t *ids, size_t *n) {
    tti_chain chain;
    size_t kept = 0;
    uint32_t i;
    if (tti_worker_grow(w, &w->links, &w->links_capacity, *n, sizeof *w->links) != TT_OK) { return TT_ERR_MEM; }
    /* n - 1 pairs at first, and each of at most n - 1 merges takes one out and adds two */
    if (tti_worker_grow(w, &w->heap, &w->heap_capacity, 2 * *n, sizeof *w->heap) != TT_OK) { return TT_ERR_MEM; }
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
        if (chain.links[(uint32_t)pair].rank == (uint32_t)(pair >> 32)) { tti_chain_merge(&chain, (uint32_t)pair); }
    }
    for (i = 0; i != TTI_NOWHERE; i = chain.links[i].next) { ids[kept++] = chain.links[i].id; }
    *n = kept;
    return TT_OK;
}

/* The tokens that a piece begins as; ids has a place for each byte. *unknown is set to the first byte without a
 * token, or NULL; such bytes are left out. Returns how many there are. */
static size_t tti_symbols(const tt_tokenizer *t, const char *at, size_t size, int32_t *ids, const char **unknown) {
    const char *end = at + size;
    size_t n = 0;
    *unknown = NULL;
    while (at < end) {
        uint32_t c;
        size_t bytes = t->characters ? tti_utf8(at, end, &c) : 1;
        const tti_word *word = t->characters ? tti_dict_find(&t->vocab, at, bytes) : NULL;
        if (word) { ids[n++] = (int32_t)word->value; at += bytes; continue; }
        for (; bytes > 0; bytes--, at++) {
            int32_t id = t->byte_id[(unsigned char)*at];
            if (id >= 0) { ids[n++] = id; } else if (!*unknown) { *unknown = at; }
        }
    }
    return n;
}
/* Fills what follows from tokens and merges. Most words of a text are one token each; TTI_WHOLE marks the tokens
 * for which the dictionary alone gives what merging would give. */
static tt_status tti_tokenizer_finish(tt_tokenizer *t) {
    size_t i, k;
    tt_status status = TT_OK;
    for (i = 0; i < 256; i++) { t->byte_id[i] = -1; }
    for (i = 0; i < t->n_tokens; i++) {
        tti_token *token = &t->tokens[i];
        const char *bytes = tti_token_bytes(t, token);
        token->flags &= ~TTI_WHOLE;
        if (token->flags & TTI_BYTE) {
            static const char hex[] = "0123456789ABCDEF";
            t->byte_id[(strchr(hex, bytes[3]) - hex) * 16 + (strchr(hex, bytes[4]) - hex)] = (int32_t)i;
        }
    }
    for (i = 0; i < 256 && !t->characters; i++) {
        char byte = (char)i;
        const tti_word *word = tti_dict_find(&t->vocab, &byte, 1);
        if (word) { t->byte_id[i] = (int32_t)word->value; }
    }
    for (i = 0; i < t->n_tokens; i++) {
        tti_token *token = &t->tokens[i];
        int32_t ids[TTI_SHORT_PIECE];
        const char *unknown;
        const tti_word *word;
        if (!(token->flags & TTI_IN_MODEL) || token->flags & TTI_SPECIAL) { continue; }
        word = tti_dict_find(&t->vocab, tti_token_bytes(t, token), token->size);
        if (!word || word->value != (int64_t)i) { continue; }
        if (t->ignore_merges) { token->flags |= TTI_WHOLE; }
        if (token->size > TTI_SHORT_PIECE) { continue; }
        k = tti_symbols(t, tti_token_bytes(t, token), token->size, ids, &unknown);
        if (!unknown && tti_merge_short(t, ids, k) == 1 && ids[0] == (int32_t)i) { token->flags |= TTI_WHOLE; }
    }
    for (i = 0; i < sizeof tti_composed / sizeof *tti_composed && t->nfc && status == TT_OK; i += 3) {
        status = tti_pair_add(t->ctx, &t->compose, (int32_t)tti_composed[i + 1], (int32_t)tti_composed[i + 2], (int32_t)tti_composed[i]);
    }
    if (t->nfc) { tti_map_fill(t->map, 1); }
    return status;
}

/* ---- encode ---- */
/* A text in parts, each with its own rule for special tokens, is encoded as one: words go across the borders. */
typedef struct tti_part { size_t end, normal; tt_special special; } tti_part;    /* normal: end in the normalized section */
typedef struct tti_encoder {
    const tt_tokenizer *t;
    tti_bpe_worker *w;
    const char *text, *section;      /* section: what is being encoded, in text */
    const char *begin;               /* the section as it is normalized         */
    tti_part *part, *last;           /* part: in which the section begins       */
    int quiet;                       /* 1: errors set no text */
    tt_ids *out;
} tti_encoder;

static tt_status tti_encode_push(const tti_encoder *e, const int32_t *ids, size_t n) {
    tt_ids *out = e->out;
    size_t i;
    if (n > out->capacity - out->size && tti_worker_grow(e->w, &out->data, &out->capacity, out->size + n, sizeof *ids) != TT_OK) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { out->data[out->size + i] = ids[i]; }
    out->size += n;
    return TT_OK;
}
/* The symbols, merged; into e->w->symbols, *n of them. */
static tt_status tti_encode_merge(const tti_encoder *e, const char *at, size_t size, size_t *n) {
    const tt_tokenizer *t = e->t;
    const char *unknown;
    if (tti_worker_grow(e->w, &e->w->symbols, &e->w->symbols_capacity, size, sizeof *e->w->symbols) != TT_OK) { return TT_ERR_MEM; }
    *n = tti_symbols(t, at, size, e->w->symbols, &unknown);
    if (unknown && t->refuse & TT_REFUSE_BYTES) {
        size_t offset = (size_t)((e->section == e->text ? unknown : e->section) - e->text);
        return e->quiet ? TT_ERR_ARG : tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: byte 0x%02X at offset %lu has no token in this tokenizer",
                                               (unsigned)(unsigned char)*unknown, (unsigned long)offset);
    }
    if (*n > TTI_SHORT_PIECE) { return tti_merge_long(t, e->w, e->w->symbols, n); }
    *n = tti_merge_short(t, e->w->symbols, *n);
    return TT_OK;
}
/* Up to 24 bytes as three words, zeros behind them. `end`: of the memory that may be read. */
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
static tt_status tti_encode_piece(const tti_encoder *e, const char *at, size_t size, const char *end) {
    const tt_tokenizer *t = e->t;
    tti_cached *cached = NULL;
    uint64_t words[3], hash;
    const int32_t *ids;
    const tti_word *word;
    size_t n = 1;
    int32_t whole;
    if (size <= TTI_CACHED_BYTES) {
        tti_piece_words(at, size, end, words);
        hash = (words[0] ^ (words[1] * 0x9E3779B97F4A7C15u) ^ (words[2] * 0xC2B2AE3D27D4EB4Fu) ^ size) * 0xD6E8FEB86659FD93u;
        hash = (hash ^ (hash >> 32)) * 0xD6E8FEB86659FD93u;
        cached = &e->w->cache[hash >> (64 - TTI_CACHE_BITS)];
        if (cached->size == (int32_t)size && cached->words[0] == words[0] && cached->words[1] == words[1] && cached->words[2] == words[2]) {
            return tti_encode_push(e, cached->ids, (size_t)cached->n);
        }
    }
    word = tti_dict_find(&t->vocab, at, size);
    if (word && t->tokens[word->value].flags & TTI_WHOLE) {
        whole = (int32_t)word->value;
        ids = &whole;
    } else {
        tt_status status = tti_encode_merge(e, at, size, &n);
        if (status != TT_OK) { return status; }
        ids = e->w->symbols;
    }
    if (cached && n <= TTI_CACHED_IDS) {
        memcpy(cached->words, words, sizeof words);
        cached->size = (int32_t)size;
        cached->n = (int32_t)n;
        memcpy(cached->ids, ids, n * sizeof *ids);
    }
    return tti_encode_push(e, ids, n);
}
/* The text with U+2581 for each space and, if wanted, before it; in the worker's memory. */
static tt_status tti_mark_spaces(tti_bpe_worker *w, int prepend, const char **at, const char **end) {
    tti_bytes *out = &w->prefixed;
    tt_status status;
    const char *p;
    out->size = 0;
    status = tti_bytes_append(w, out, TTI_SPACE_MARK, prepend ? 3 : 0);
    for (p = *at; p < *end && status == TT_OK; ) {
        const char *space = (const char *)memchr(p, ' ', (size_t)(*end - p));
        if (!space) { space = *end; }
        status = tti_bytes_append(w, out, p, (size_t)(space - p));
        if (status == TT_OK && space < *end) { status = tti_bytes_append(w, out, TTI_SPACE_MARK, 3); }
        p = space + 1;
    }
    if (status == TT_OK) {
        *at = out->data;
        *end = out->data + out->size;
    }
    return status;
}
/* Whether Metaspace puts a mark before [at, end). */
static int tti_metaspace_prepends(const tti_encoder *e, const char *at, const char *end) {
    if (*at == ' ' || (end - at >= 3 && memcmp(at, TTI_SPACE_MARK, 3) == 0)) { return 0; }
    return e->t->characters == TTI_MARKS_ALWAYS || (e->t->characters == TTI_MARKS_FIRST && e->section == e->text && at == e->begin);
}
/* Text without added tokens. */
static tt_status tti_encode_pieces(const tti_encoder *e, const char *at, const char *end) {
    const tt_tokenizer *t = e->t;
    tti_scanner scanner;
    tt_status status = TT_OK;
    if (t->characters >= TTI_MARKS_ALWAYS) { status = tti_mark_spaces(e->w, tti_metaspace_prepends(e, at, end), &at, &end); }
    if (t->prefix_space && *at != ' ') {
        e->w->prefixed.size = 0;
        status = tti_bytes_append(e->w, &e->w->prefixed, " ", 1);
        if (status == TT_OK) { status = tti_bytes_append(e->w, &e->w->prefixed, at, (size_t)(end - at)); }
        if (status != TT_OK) { return status; }
        at = e->w->prefixed.data;
        end = at + e->w->prefixed.size;
    }
    scanner.map = t->map;
    scanner.end = end;
    scanner.hit = 0;
    while (at < end && status == TT_OK) {
        const char *stop = tti_piece(t->pretokenizer, &scanner, at);
        status = tti_encode_piece(e, at, (size_t)(stop - at), end);
        at = stop;
    }
    return status;
}
/* The text as the file's normalizer gives it, in *at and *end: the text itself, or in the worker's memory. */
static tt_status tti_normalize(const tt_tokenizer *t, tti_bpe_worker *w, const char **at, const char **end) {
    tt_status status = TT_OK;
    int same = 1;
    w->normal.size = 0;
    if (t->nfc) { status = tti_nfc(t->map, &t->compose, w, *at, *end, &w->normal, &same); }
    if (status == TT_OK && !same) {
        *at = w->normal.data;
        *end = w->normal.data + w->normal.size;
    }
    if (status == TT_OK && t->characters == TTI_MARKS_NORMALIZER && *at < *end) { status = tti_mark_spaces(w, 1, at, end); }
    return status;
}
/* Puts the longest added token at each place of [begin, end) where one begins on the worker's pile, the first one on top.
 * Read from its end, the text needs no place twice, however long the tokens are. */
static tt_status tti_find_added(const tt_tokenizer *t, tti_bpe_worker *w, int level, const char *begin, const char *end) {
    const int32_t *roots = t->roots[level];
    int32_t branch = level, next;
    size_t at;
    for (at = (size_t)(end - begin); at-- > 0; ) {
        while (!(next = tti_branch_child(t, branch, begin[at])) && branch != level) { branch = t->branches[branch].fail; }
        if (!next) {
            while (at > 0 && !roots[(unsigned char)begin[at - 1]]) { at--; }
            continue;
        }
        branch = next;
        if (t->branches[branch].id < 0) { continue; }
        if (tti_worker_grow(w, &w->found, &w->found_capacity, w->n_found + 1, sizeof *w->found) != TT_OK) { return TT_ERR_MEM; }
        w->found[w->n_found].at = at;
        w->found[w->n_found].id = t->branches[branch].id;
        w->found[w->n_found++].size = t->branches[branch].size;
    }
    return TT_OK;
}
static const char *tti_before(const char *begin, const char *at, uint32_t *c) {      /* the character that ends at `at` */
    const char *p = at - 1;
    while (p > begin && at - p < 4 && ((unsigned char)*p & 0xC0) == 0x80) { p--; }
    if (tti_utf8(p, at, c) == (size_t)(at - p)) { return p; }
    *c = UINT32_MAX;
    return at - 1;
}
static int tti_stands_alone(const char *begin, const char *at, const char *stop, const char *end) {
    uint32_t c;
    if (at > begin) { tti_before(begin, at, &c); if (tti_is_word(c)) { return 0; } }
    if (stop < end) { tti_utf8(stop, end, &c); if (tti_is_word(c)) { return 0; } }
    return 1;
}
static tt_status tti_encode_section(tti_encoder *e, const char *begin, const char *end, int level);

/* What a special token at [start, *stop) is by the part in which it lies. Across a border it is text, and the search goes on
 * at the border: no part hides a token of another. */
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
/* Cuts the added tokens of this level out of [begin, end). As in Hugging Face, a token that is found and not taken
 * (text, or part of a word) still ends the search for others inside it. */
static tt_status tti_encode_level(tti_encoder *e, const char *begin, const char *end, int level) {
    const tt_tokenizer *t = e->t;
    const char *at = begin, *from = begin;           /* from: not encoded yet */
    size_t below = e->w->n_found;
    tt_status status = tti_find_added(t, e->w, level, begin, end);
    while (status == TT_OK && e->w->n_found > below) {
        tti_found f = e->w->found[--e->w->n_found];
        const char *start = begin + f.at, *stop = start + f.size;
        int flags = t->tokens[f.id].flags;
        tt_special special = TT_SPECIAL_PARSE;
        if (start < at) { continue; }
        at = stop;
        if (flags & TTI_SPECIAL) { special = tti_special_at(e, level, start, &at); }
        if (special == TT_SPECIAL_TEXT) { continue; }
        if (flags & TTI_SINGLE && !tti_stands_alone(begin, start, stop, end)) { continue; }
        if (special == TT_SPECIAL_REFUSE) {
            const char *where = level == 0 ? start : e->section;
            return e->quiet ? TT_ERR_ARG : tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: special token %.*s at offset %lu, expected text without special tokens",
                f.size < 200 ? (int)f.size : 200, tti_token_bytes(t, &t->tokens[f.id]), (unsigned long)(where - e->text));
        }
        if (flags & TTI_LSTRIP) {
            uint32_t c;
            const char *p;
            while (start > begin && (p = tti_before(begin, start, &c), tti_char_class(c) == TTI_SPACE)) { start = p; }
            if (start < from) { start = from; }
        }
        if (flags & TTI_RSTRIP) {
            uint32_t c;
            size_t n;
            while (stop < end && (n = tti_utf8(stop, end, &c), tti_char_class(c) == TTI_SPACE)) { stop += n; }
        }
        if (from < start) { status = tti_encode_section(e, from, start, level); }
        if (status == TT_OK) { status = tti_encode_push(e, &f.id, 1); }
        from = stop;
    }
    return status == TT_OK && from < end ? tti_encode_section(e, from, end, level) : status;
}
/* Finds the part in which the section begins, and where parts end in it as it is normalized. */
static tt_status tti_part_borders(tti_encoder *e, const char *begin, const char *end) {
    tt_status status = TT_OK;
    tti_part *part;
    while (e->part < e->last && e->text + e->part->end <= begin) { e->part++; }
    for (part = e->part; part < e->last && e->text + part->end < end && status == TT_OK; part++) {
        const char *at = begin, *stop = e->text + part->end;
        status = tti_normalize(e->t, e->w, &at, &stop);
        part->normal = (size_t)(stop - at);
    }
    part->normal = (size_t)-1;
    return status;
}
static tt_status tti_encode_section(tti_encoder *e, const char *begin, const char *end, int level) {
    tt_status status;
    if (level == 1) { return tti_encode_pieces(e, begin, end); }
    e->section = begin;
    status = tti_part_borders(e, begin, end);
    if (status == TT_OK) { status = tti_normalize(e->t, e->w, &begin, &end); }
    e->begin = begin;
    return status == TT_OK ? tti_encode_level(e, begin, end, 1) : status;
}
/* n >= 1 parts, the last of which ends where the text does. */
static tt_status tti_encode_parts(const tt_tokenizer *t, tti_bpe_worker *w, const char *text, size_t size, tti_part *parts, size_t n, int quiet, tt_ids *out) {
    tti_encoder e;
    tt_status status;
    size_t before = out->size, n_cache = 0;
    e.t = t;
    e.w = w;
    e.text = e.section = e.begin = text;
    e.part = parts;
    e.last = parts + (n - 1);
    e.quiet = quiet;
    e.out = out;
    if (size >= (size_t)INT32_MAX / 4) {
        return quiet ? TT_ERR_ARG : tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: size is %lu, expected less than 2^29", (unsigned long)size);
    }
    if (t->refuse & TT_REFUSE_UTF8 && tti_utf8_invalid(text, text + size) < text + size) {
        size_t offset = (size_t)(tti_utf8_invalid(text, text + size) - text);
        return quiet ? TT_ERR_ARG : tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: byte 0x%02X at offset %lu is no valid UTF-8", (unsigned)(unsigned char)text[offset], (unsigned long)offset);
    }
    if (size == 0) { return TT_OK; }
    status = w->cache ? TT_OK : tti_worker_grow(w, &w->cache, &n_cache, (size_t)1 << TTI_CACHE_BITS, sizeof *w->cache);
    w->n_found = 0;
    if (status == TT_OK) { status = tti_encode_level(&e, text, text + size, 0); }
    if (status != TT_OK) { out->size = before; }
    return status;
}
static tt_status tti_encode(const tt_tokenizer *t, tti_bpe_worker *w, const char *text, size_t size, tt_special special, int quiet, tt_ids *out) {
    tti_part all;
    all.end = size;
    all.special = special;
    return tti_encode_parts(t, w, text, size, &all, 1, quiet, out);
}
static tt_status tti_special_check(const tt_tokenizer *t, tt_special special) {
    if ((int)special >= 0 && special <= TT_SPECIAL_REFUSE) { return TT_OK; }
    return tt_fail(t->ctx, TT_ERR_ARG, "tt_encode: special is %d, expected a tt_special", (int)special);
}
TT_API tt_status tt_encode(const tt_tokenizer *t, const char *text, size_t size, tt_special special, tt_ids *out) {
    tt_status status = tti_special_check(t, special);
    return status == TT_OK ? tti_encode(t, &t->workers[0], text, size, special, 0, out) : status;
}
TT_API tt_status tt_encode_document(const tt_tokenizer *t, const char *text, size_t size, tt_special special, tt_ids *out) {
    size_t before = out->size;
    tt_status status = tt_ids_append(out, t->before, (size_t)t->n_before);
    if (status == TT_OK) { status = tt_encode(t, text, size, special, out); }
    if (status == TT_OK) { status = tt_ids_append(out, t->after, (size_t)t->n_after); }
    if (status != TT_OK) { out->size = before; }
    return status;
}

/* Each text's ids lie in the memory of the worker that encoded it until all are done. */
#define TTI_BATCH_TEXTS 16
typedef struct tti_batch_part { size_t begin, n; int worker; tt_status status; } tti_batch_part;
typedef struct tti_text_batch { const tt_tokenizer *t; const tt_span *texts; size_t n; tt_special special; tti_batch_part *parts; } tti_text_batch;
static void tti_encode_texts(void *user, int part, int worker) {
    const tti_text_batch *b = (const tti_text_batch *)user;
    tti_bpe_worker *w = &b->t->workers[worker];
    size_t i = (size_t)part * TTI_BATCH_TEXTS, end = i + TTI_BATCH_TEXTS < b->n ? i + TTI_BATCH_TEXTS : b->n;
    for (; i < end; i++) {
        tti_batch_part *p = &b->parts[i];
        p->worker = worker;
        p->begin = w->ids.size;
        p->status = tti_encode(b->t, w, b->texts[i].data, b->texts[i].size, b->special, 1, &w->ids);
        p->n = w->ids.size - p->begin;
    }
}
TT_API tt_status tt_encode_batch(const tt_tokenizer *t, const tt_span *texts, size_t n, tt_special special, tt_ids *out, size_t *offsets) {
    tti_text_batch batch;
    tti_batch_part *parts;
    tt_status status = tti_special_check(t, special);
    size_t before = out->size, i;
    int k;
    if (status != TT_OK) { return status; }
    parts = (tti_batch_part *)tt_alloc(t->ctx, n, sizeof *parts);
    if (!parts) { return TT_ERR_MEM; }
    batch.t = t;
    batch.texts = texts;
    batch.n = n;
    batch.special = special;
    batch.parts = parts;
    status = tti_parallel(t->ctx, tti_encode_texts, &batch, (int)((n + TTI_BATCH_TEXTS - 1) / TTI_BATCH_TEXTS));
    for (i = 0; i < n && status == TT_OK; i++) {
        offsets[i] = out->size;
        if (parts[i].status == TT_OK) { status = tt_ids_append(out, t->workers[parts[i].worker].ids.data + parts[i].begin, parts[i].n); }
        else { status = tti_encode(t, &t->workers[0], texts[i].data, texts[i].size, special, 0, out); }      /* again, for the reason */
    }
    offsets[i < n ? i : n] = out->size;
    if (status != TT_OK) { out->size = before; }
    for (k = 0; k < t->n_workers; k++) { tt_ids_free(&t->workers[k].ids); }
    tt_free(t->ctx, parts, n, sizeof *parts);
    return status;
}

/* ---- decode ---- */
#define TTI_REPLACEMENT "\xEF\xBF\xBD"      /* U+FFFD */
static tt_status tti_decode_one(const tt_tokenizer *t, int32_t id, size_t place, int skip_special, tt_text *out) {
    const tti_token *token = id >= 0 && (size_t)id < t->n_tokens ? &t->tokens[id] : NULL;
    const char *bytes, *end;
    tt_status status = TT_OK;
    if (id < 0) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_decode: ids[%lu] is %ld, expected a token id, which is >= 0", (unsigned long)place, (long)id); }
    if (!token || !(token->flags & TTI_USED)) { return tt_text_append(out, TTI_REPLACEMENT, 3); }
    if (skip_special && token->flags & TTI_SPECIAL) { return TT_OK; }
    bytes = tti_token_bytes(t, token);
    end = bytes + token->size;
    if (token->flags & TTI_NORMALIZED) { status = tti_normalize(t, &t->workers[0], &bytes, &end); }      /* what was found in the text */
    if (status != TT_OK) { return status; }
    if (!t->characters) { return tt_text_append(out, bytes, (size_t)(end - bytes)); }
    if (token->flags & TTI_BYTE) {
        char byte = (char)strtol(bytes + 3, NULL, 16);       /* <0x41> */
        return tt_text_append(out, &byte, 1);
    }
    while (bytes < end && status == TT_OK) {
        int mark = end - bytes >= 3 && memcmp(bytes, TTI_SPACE_MARK, 3) == 0;
        uint32_t c;
        size_t size = mark ? 3 : tti_utf8(bytes, end, &c);
        status = mark ? tt_text_append(out, " ", 1) : tt_text_append(out, bytes, size);
        bytes += size;
    }
    return status;
}
/* Takes the space off that SentencePiece's kind puts before a text. */
static void tti_decode_strip(const tt_tokenizer *t, tt_text *out, size_t begin) {
    if (!t->strip || out->size == begin || out->data[begin] != ' ') { return; }
    memmove(out->data + begin, out->data + begin + 1, out->size - begin);
    out->size--;
}
TT_API tt_status tt_decode(const tt_tokenizer *t, const int32_t *ids, size_t n, int skip_special, tt_text *out) {
    size_t before = out->size, i;
    tt_status status = tt_text_append(out, "", 0);
    for (i = 0; i < n && status == TT_OK; i++) { status = tti_decode_one(t, ids[i], i, skip_special, out); }
    if (status == TT_OK) { tti_decode_strip(t, out, before); }
    if (status != TT_OK && out->data) { out->size = before; out->data[before] = 0; }
    return status;
}
TT_API tt_status tt_decoder_push(tt_decoder *d, int32_t id, tt_text *out) {
    size_t before = out->size, open;
    tt_status status = tt_text_append(out, d->held, (size_t)d->n_held);
    if (status == TT_OK) { status = tti_decode_one(d->tokenizer, id, 0, d->skip_special, out); }
    if (status != TT_OK) {
        if (out->data) { out->size = before; out->data[before] = 0; }
        return status;
    }
    if (!d->started && out->size > before) {
        d->started = 1;
        tti_decode_strip(d->tokenizer, out, before);
    }
    open = tti_utf8_open(out->data + before, out->data + out->size);
    out->size -= open;
    memcpy(d->held, out->data + out->size, open);
    d->n_held = (int)open;
    out->data[out->size] = 0;
    return TT_OK;
}
TT_API tt_status tt_decoder_end(tt_decoder *d, tt_text *out) {
    tt_status status = tt_text_append(out, d->held, (size_t)d->n_held);
    if (status == TT_OK) { d->started = d->n_held = 0; }
    return status;
}

/* ---- reading tokenizer.json ---- */
static int tti_node_is(const tt_json *node, const char *text) {
    return node && node->type == TT_JSON_STRING && node->length == strlen(text) && memcmp(node->string, text, node->length) == 0;
}
static int tti_type_is(const tt_json *object, const char *type) { return tti_node_is(tt_json_get(object, "type"), type); }
static int tti_member_null(const tt_json *object, const char *key) {
    const tt_json *node = tt_json_get(object, key);
    return !node || node->type == TT_JSON_NULL;
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
static tt_status tti_unsupported(tt_context *ctx, const char *what, const tt_json *object, const char *key, const char *expected) {
    return tt_fail(ctx, TT_ERR_FILE, "tt_tokenizer_parse: %s%s is %.200s, expected %s", what, key, tti_member_shown(object, key), expected);
}
/* Elements of a Sequence, or the one thing itself, as a list: calls them in turn. NULL at the end. */
static const tt_json *tti_steps(const tt_json *node, const char *key) {
    const tt_json *list = tti_type_is(node, "Sequence") ? tt_json_get(node, key) : NULL;
    return !node || node->type != TT_JSON_OBJECT ? NULL : list ? list->child : node;
}
static const tt_json *tti_steps_next(const tt_json *whole, const tt_json *element) { return element == whole ? NULL : element->next; }

static tt_status tti_read_id(tt_context *ctx, const tt_json *node, const char *what, int32_t *id) {
    double number = node && node->type == TT_JSON_NUMBER ? node->number : -1;
    if (!(number >= 0 && number < TTI_MAX_VOCAB) || number != (double)(int32_t)number) {
        return tt_fail(ctx, TT_ERR_FILE, "tt_tokenizer_parse: %s is %.17g, expected a whole number from 0 to %d", what, number, TTI_MAX_VOCAB - 1);
    }
    *id = (int32_t)number;
    return TT_OK;
}
static tt_status tti_read_added(tt_tokenizer *t, const tt_json *token) {
    static const struct { const char *key; int flag; } flags[] = {{"special", TTI_SPECIAL}, {"normalized", TTI_NORMALIZED},
        {"lstrip", TTI_LSTRIP}, {"rstrip", TTI_RSTRIP}, {"single_word", TTI_SINGLE}};
    const tt_json *content = tt_json_get(token, "content");
    int set = 0;
    int32_t id = 0;
    size_t i;
    if (!content || content->type != TT_JSON_STRING || content->length == 0) {
        return tti_unsupported(t->ctx, "added_tokens: ", token, "content", "a string that is not empty");
    }
    if (tti_read_id(t->ctx, tt_json_get(token, "id"), "added_tokens: id", &id) != TT_OK) { return TT_ERR_FILE; }
    for (i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (tt_json_number(token, flags[i].key, 0) != 0) { set |= flags[i].flag; }
    }
    if (tti_dict_find(&t->added, content->string, content->length) || ((size_t)id < t->n_tokens && t->tokens[id].flags)) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: added token %.200s or its id %ld occurs twice", content->string, (long)id);
    }
    return tti_added_add(t, id, content->string, content->length, set);
}
/* The tree of added tokens, when normalizer and tokens are known: a "normalized" token is looked for as the
 * normalizer writes it. */
static tt_status tti_added_index(tt_tokenizer *t) {
    tt_status status = tti_branch_grow(t, 2);
    size_t i;
    for (i = 0; i < t->n_tokens && status == TT_OK; i++) {
        const tti_token *token = &t->tokens[i];
        const char *at, *end;
        int normalized = (token->flags & TTI_NORMALIZED) != 0;
        if (!(token->flags & TTI_ADDED)) { continue; }
        at = tti_token_bytes(t, token);
        end = at + token->size;
        if (normalized) { status = tti_normalize(t, &t->workers[0], &at, &end); }
        if (status == TT_OK) { status = tti_branch_add(t, normalized, at, (size_t)(end - at), (int32_t)i); }
    }
    return status == TT_OK ? tti_branches_link(t) : status;
}
static int tti_is_byte_name(const char *key, size_t size) {
    return size == 6 && memcmp(key, "<0x", 3) == 0 && key[3] && key[4] && strchr("0123456789ABCDEF", key[3]) && strchr("0123456789ABCDEF", key[4]) && key[5] == '>';
}
/* What a token is as the model writes it: bytes in GPT-2's mapping, or characters. */
static tt_status tti_read_key(const tt_tokenizer *t, const char *key, size_t size, tt_text *bytes, int *valid) {
    if (!t->characters) { return tti_key_to_bytes(key, size, bytes, valid); }
    bytes->size = 0;
    *valid = 1;
    return tt_text_append(bytes, key, size);
}
static tt_status tti_read_token(tt_tokenizer *t, const tt_json *node, tt_text *bytes) {
    const tti_word *added = tti_dict_find(&t->added, node->key, node->key_length);
    int32_t id = 0;
    int valid;
    if (tti_read_id(t->ctx, node, "model.vocab: id", &id) != TT_OK) { return TT_ERR_FILE; }
    if (added ? added->value != id : (size_t)id < t->n_tokens && t->tokens[id].flags) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: token %.200s and another one want the id %ld", node->key, (long)id);
    }
    if (tti_read_key(t, node->key, node->key_length, bytes, &valid) != TT_OK) { return TT_ERR_MEM; }
    if (added) {
        t->tokens[id].flags |= TTI_IN_MODEL;
        if (!valid || bytes->size == 0 || tti_dict_find(&t->vocab, bytes->data, bytes->size)) { return TT_OK; }
        return tti_dict_add(&t->vocab, bytes->data, bytes->size, id) ? TT_OK : TT_ERR_MEM;      /* merges may name it */
    }
    if (!valid || bytes->size == 0 || tti_dict_find(&t->vocab, bytes->data, bytes->size)) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: token \"%.200s\" with id %ld is %s", node->key, (long)id,
                       !valid ? "not written in GPT-2's byte characters" : bytes->size == 0 ? "empty" : "there twice");
    }
    if (tti_token_add(t, id, bytes->data, bytes->size) != TT_OK) { return TT_ERR_MEM; }
    if (t->characters && tti_is_byte_name(bytes->data, bytes->size)) { t->tokens[id].flags |= TTI_BYTE; }
    return TT_OK;
}
/* The id of one side of a merge; its bytes are appended to `joined`. */
static tt_status tti_read_side(tt_tokenizer *t, const char *key, size_t size, tt_text *bytes, tt_text *joined, int32_t *id) {
    const tti_word *word;
    int valid;
    if (tti_read_key(t, key, size, bytes, &valid) != TT_OK) { return TT_ERR_MEM; }
    word = valid ? tti_dict_find(&t->vocab, bytes->data, bytes->size) : NULL;
    if (!word) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: merge %lu names \"%.*s\", which is not in the vocabulary",
                       (unsigned long)t->n_merges, (int)(size < 200 ? size : 200), key);
    }
    *id = (int32_t)word->value;
    return tt_text_append(joined, bytes->data, bytes->size);
}
/* "left right" or ["left", "right"]. Of equal pairs the last one counts, as in Hugging Face. */
static tt_status tti_read_merge(tt_tokenizer *t, const tt_json *node, tt_text *bytes, tt_text *joined) {
    const tt_json *first = node->type == TT_JSON_ARRAY && node->length == 2 ? node->child : NULL;
    const char *space = node->type == TT_JSON_STRING ? (const char *)memchr(node->string, ' ', node->length) : NULL;
    const tti_word *result;
    int32_t left = 0, right = 0;
    tt_status status;
    joined->size = 0;
    if (space) {
        size_t size = (size_t)(space - node->string);
        status = tti_read_side(t, node->string, size, bytes, joined, &left);
        if (status == TT_OK) { status = tti_read_side(t, space + 1, node->length - size - 1, bytes, joined, &right); }
    } else if (first && first->type == TT_JSON_STRING && first->next->type == TT_JSON_STRING) {
        status = tti_read_side(t, first->string, first->length, bytes, joined, &left);
        if (status == TT_OK) { status = tti_read_side(t, first->next->string, first->next->length, bytes, joined, &right); }
    } else {
        status = tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: merge %lu is neither \"left right\" nor [\"left\", \"right\"]", (unsigned long)t->n_merges);
    }
    if (status != TT_OK) { return status; }
    result = tti_dict_find(&t->vocab, joined->data, joined->size);
    if (!result) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: merge %lu gives a token that is not in the vocabulary", (unsigned long)t->n_merges); }
    return tti_merge_add(t, left, right, (int32_t)result->value);
}
/* Whether a token that merges give has a mark U+2581 behind another character: then pieces may not end at marks. */
static int tti_marks_inside(const tt_tokenizer *t) {
    size_t i, k;
    for (i = 0; i < t->n_merges; i++) {
        const tti_token *token = &t->tokens[t->merges[i].result];
        const char *bytes = tti_token_bytes(t, token);
        int other = 0;
        for (k = 0; k < token->size; k++) {
            int mark = token->size - k >= 3 && memcmp(bytes + k, TTI_SPACE_MARK, 3) == 0;
            if (mark && other) { return 1; }
            if (mark) { k += 2; } else { other = 1; }
        }
    }
    return 0;
}
static tt_status tti_read_model(tt_tokenizer *t, const tt_json *model) {
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    static const char *const off[] = {"dropout", "fuse_unk", "byte_fallback"};
    const tt_json *vocab = tt_json_get(model, "vocab"), *merges = tt_json_get(model, "merges"), *node;
    tt_text bytes = TT_INIT, joined = TT_INIT;
    tt_status status = TT_OK;
    size_t i;
    if (tt_json_get(model, "type") && !tti_type_is(model, "BPE")) { return tti_unsupported(t->ctx, "model.", model, "type", "BPE"); }
    for (i = 0; i < 2; i++) {
        if (!tti_member_null(model, empty[i]) && !tti_node_is(tt_json_get(model, empty[i]), "")) { return tti_unsupported(t->ctx, "model.", model, empty[i], "null"); }
    }
    for (i = 0; i < (t->characters ? 1u : 3u); i++) {
        node = tt_json_get(model, off[i]);
        if (!tti_member_null(model, off[i]) && (node->number != 0 || (node->type != TT_JSON_BOOL && node->type != TT_JSON_NUMBER))) {
            return tti_unsupported(t->ctx, "model.", model, off[i], "null or false");
        }
    }
    if (t->characters && tt_json_number(model, "byte_fallback", 0) == 0) { return tti_unsupported(t->ctx, "model.", model, "byte_fallback", "true with this normalizer"); }
    if (!vocab || vocab->type != TT_JSON_OBJECT) { return tti_unsupported(t->ctx, "model.", model, "vocab", "an object"); }
    if (!merges || merges->type != TT_JSON_ARRAY) { return tti_unsupported(t->ctx, "model.", model, "merges", "an array"); }
    t->ignore_merges = tt_json_number(model, "ignore_merges", 0) != 0;
    bytes.ctx = joined.ctx = t->ctx;
    for (node = vocab->child; node && status == TT_OK; node = node->next) { status = tti_read_token(t, node, &bytes); }
    for (node = merges->child; node && status == TT_OK; node = node->next) { status = tti_read_merge(t, node, &bytes, &joined); }
    tt_text_free(&bytes);
    tt_text_free(&joined);
    if (status == TT_OK) { status = tti_tokenizer_finish(t); }
    if (status != TT_OK) { return status; }
    for (i = 0; i < 256; i++) {
        if (t->byte_id[i] >= 0) { continue; }
        if (t->characters) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: model.vocab has no <0x%02X>, expected all 256 bytes with byte_fallback", (unsigned)i); }
        if (!tti_member_null(model, "unk_token")) { return tti_unsupported(t->ctx, "model.", model, "unk_token", "null, as not every byte has a token"); }
    }
    if (t->characters && t->pretokenizer != TTI_PRETOKENIZE_EACH_MARK) { t->pretokenizer = t->ignore_merges || tti_marks_inside(t) ? (int)TT_PRETOKENIZE_BYTES : TTI_PRETOKENIZE_MARKS; }
    return TT_OK;
}
/* Split by a known pattern, each piece on its own. */
static tt_status tti_read_split(tt_tokenizer *t, const tt_json *split) {
    const tt_json *regex = tt_json_get(tt_json_get(split, "pattern"), "Regex");
    size_t i;
    for (i = 0; i < sizeof tti_patterns / sizeof *tti_patterns; i++) {
        if (tti_node_is(regex, tti_patterns[i].pattern) && tti_node_is(tt_json_get(split, "behavior"), "Isolated") && tt_json_number(split, "invert", 0) == 0) {
            t->pretokenizer = (int)tti_patterns[i].kind;
            return TT_OK;
        }
    }
    return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: pre_tokenizer Split by %.300s, behavior %.20s, expected Isolated by a pattern of GPT-2, "
                   "Llama 3, Qwen 2, cl100k, o200k or Mistral-Nemo", tti_member_shown(tt_json_get(split, "pattern"), "Regex"), tti_member_shown(split, "behavior"));
}
/* Metaspace of U+2581; "add_prefix_space" is an older field, which has to agree. */
static tt_status tti_read_metaspace(tt_tokenizer *t, const tt_json *root) {
    const tt_json *pre = tt_json_get(root, "pre_tokenizer"), *scheme = tt_json_get(pre, "prepend_scheme");
    int k = 0;
    if (!tti_node_is(tt_json_get(pre, "replacement"), TTI_SPACE_MARK)) { return tti_unsupported(t->ctx, "pre_tokenizer Metaspace.", pre, "replacement", "U+2581"); }
    if (scheme) { while (k < 3 && !tti_node_is(scheme, tti_prepend_schemes[k])) { k++; } }
    if (k == 3) { return tti_unsupported(t->ctx, "pre_tokenizer Metaspace.", pre, "prepend_scheme", "always, first or never"); }
    if (k != 2 && tt_json_number(pre, "add_prefix_space", 1) == 0) { return tti_unsupported(t->ctx, "pre_tokenizer Metaspace.", pre, "add_prefix_space", "true with this prepend_scheme"); }
    t->characters = (tti_marks)((int)TTI_MARKS_ALWAYS + k);
    if (tt_json_number(pre, "split", 1) != 0) { t->pretokenizer = TTI_PRETOKENIZE_EACH_MARK; }
    return TT_OK;
}
/* ByteLevel alone, or behind a Split (then without its own pattern) or Digits (with it). */
static tt_status tti_read_pre_tokenizer(tt_tokenizer *t, const tt_json *root) {
    const tt_json *pre = tt_json_get(root, "pre_tokenizer"), *last = tti_steps(pre, "pretokenizers"), *first = NULL;
    int own_pattern;
    if (!last) { return tti_unsupported(t->ctx, "", root, "pre_tokenizer", "ByteLevel, or Split or Digits and ByteLevel"); }
    if (tti_steps_next(pre, last)) {
        first = last;
        last = first->next;
        if (last->next) { return tti_unsupported(t->ctx, "pre_tokenizer.pretokenizers[2].", last->next, "type", "two elements"); }
    }
    if (first && tti_type_is(first, "Digits")) {
        if (tt_json_number(first, "individual_digits", 0) == 0) { return tti_unsupported(t->ctx, "pre_tokenizer Digits.", first, "individual_digits", "true"); }
        t->pretokenizer = TT_PRETOKENIZE_SMOLLM2;
    } else if (first && tti_type_is(first, "Split")) {
        if (tti_read_split(t, first) != TT_OK) { return TT_ERR_FILE; }
    } else if (first) {
        return tti_unsupported(t->ctx, "pre_tokenizer.pretokenizers[0].", first, "type", "Split or Digits");
    }
    if (!tti_type_is(last, "ByteLevel")) {
        if (last == pre) { return tti_unsupported(t->ctx, "", root, "pre_tokenizer", "ByteLevel, or Split or Digits and ByteLevel"); }
        return tti_unsupported(t->ctx, "pre_tokenizer.pretokenizers[1].", last, "type", "ByteLevel");
    }
    own_pattern = tt_json_number(last, "use_regex", 1) != 0;
    t->prefix_space = tt_json_number(last, "add_prefix_space", 1) != 0;
    if (first && t->prefix_space) { return tti_unsupported(t->ctx, "pre_tokenizer.pretokenizers[1].", last, "add_prefix_space", "false"); }
    if (!first) { t->pretokenizer = own_pattern ? TT_PRETOKENIZE_GPT2 : TT_PRETOKENIZE_BYTES; }
    else if (own_pattern != (t->pretokenizer == TT_PRETOKENIZE_SMOLLM2)) {
        return tti_unsupported(t->ctx, "pre_tokenizer.pretokenizers[1].", last, "use_regex", own_pattern ? "false" : "true");
    }
    return TT_OK;
}
/* NFC, or SentencePiece's Prepend U+2581 and Replace " " by it, or nothing. */
static tt_status tti_read_normalizer(tt_tokenizer *t, const tt_json *root) {
    const tt_json *whole = tt_json_get(root, "normalizer"), *step;
    int prepend = 0, replace = 0;
    if (tti_member_null(root, "normalizer")) { return TT_OK; }
    for (step = tti_steps(whole, "normalizers"); step; step = tti_steps_next(whole, step)) {
        if (tti_type_is(step, "NFC") && !t->nfc && !prepend) { t->nfc = 1; }
        else if (tti_type_is(step, "Prepend") && tti_node_is(tt_json_get(step, "prepend"), TTI_SPACE_MARK) && !prepend) { prepend = 1; }
        else if (tti_type_is(step, "Replace") && tti_node_is(tt_json_get(tt_json_get(step, "pattern"), "String"), " ") &&
                 tti_node_is(tt_json_get(step, "content"), TTI_SPACE_MARK) && prepend && !replace) { replace = 1; }
        else { break; }
    }
    if (prepend) { t->characters = TTI_MARKS_NORMALIZER; }
    if (step || prepend != replace || whole->type != TT_JSON_OBJECT) {
        return tti_unsupported(t->ctx, step && step != whole ? "normalizer Sequence: " : "", step && step != whole ? step : root,
                               step && step != whole ? "type" : "normalizer", "null, NFC, or Prepend and Replace of U+2581");
    }
    return TT_OK;
}
/* TemplateProcessing: ids before and after the text A. ByteLevel changes offsets only. */
static tt_status tti_read_template(tt_tokenizer *t, const tt_json *step) {
    const tt_json *single = tt_json_get(step, "single"), *item, *id;
    int text = 0;
    for (item = single && single->type == TT_JSON_ARRAY ? single->child : NULL; item; item = item->next) {
        const char *name = tt_json_text(tt_json_get(item, "SpecialToken"), "id", NULL);
        const tt_json *ids = name ? tt_json_get(tt_json_get(tt_json_get(step, "special_tokens"), name), "ids") : NULL;
        if (tt_json_get(item, "Sequence")) { text++; continue; }
        for (id = ids && ids->type == TT_JSON_ARRAY ? ids->child : NULL; id; id = id->next) {
            int32_t *to = text ? t->after : t->before;
            int *n = text ? &t->n_after : &t->n_before;
            if (*n == TTI_MAX_TEMPLATE) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: post_processor has more than %d tokens on a side", TTI_MAX_TEMPLATE); }
            if (tti_read_id(t->ctx, id, "post_processor: id", &to[(*n)++]) != TT_OK) { return TT_ERR_FILE; }
        }
        if (!ids) { return tti_unsupported(t->ctx, "post_processor TemplateProcessing: ", item, "SpecialToken", "a token of special_tokens"); }
    }
    return text == 1 ? TT_OK : tti_unsupported(t->ctx, "post_processor TemplateProcessing: ", step, "single", "an array with one Sequence");
}
static tt_status tti_read_post_processor(tt_tokenizer *t, const tt_json *root) {
    const tt_json *whole = tt_json_get(root, "post_processor"), *step;
    int template_seen = 0;
    if (tti_member_null(root, "post_processor")) { return TT_OK; }
    if (whole->type != TT_JSON_OBJECT) { return tti_unsupported(t->ctx, "", root, "post_processor", "null, ByteLevel or TemplateProcessing"); }
    for (step = tti_steps(whole, "processors"); step; step = tti_steps_next(whole, step)) {
        if (tti_type_is(step, "ByteLevel")) { continue; }
        if (!tti_type_is(step, "TemplateProcessing") || template_seen++) {
            return tti_unsupported(t->ctx, step != whole ? "post_processor Sequence: " : "", step != whole ? step : root, step != whole ? "type" : "post_processor",
                                   "null, ByteLevel or TemplateProcessing");
        }
        if (tti_read_template(t, step) != TT_OK) { return TT_ERR_FILE; }
    }
    return TT_OK;
}
/* ByteLevel; or SentencePiece's Replace U+2581 by " ", ByteFallback, Fuse and, if so wished, Strip one " " at the start. */
static tt_status tti_read_decoder(tt_tokenizer *t, const tt_json *root) {
    static const char *const kinds[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    const tt_json *whole = tt_json_get(root, "decoder"), *step = tti_steps(whole, "decoders");
    int k = 0;
    if (!t->characters) { return tti_type_is(whole, "ByteLevel") ? TT_OK : tti_unsupported(t->ctx, "", root, "decoder", "ByteLevel"); }
    for (; step && step != whole && k < 4 && tti_type_is(step, kinds[k]); step = step->next) {
        if (k == 0 && (!tti_node_is(tt_json_get(tt_json_get(step, "pattern"), "String"), TTI_SPACE_MARK) || !tti_node_is(tt_json_get(step, "content"), " "))) { break; }
        if (k == 3 && (!tti_node_is(tt_json_get(step, "content"), " ") || tt_json_number(step, "start", 0) != 1 || tt_json_number(step, "stop", 0) != 0)) { break; }
        k++;
    }
    t->strip = k == 4;
    return k >= 3 && !step ? TT_OK : tti_unsupported(t->ctx, "", root, "decoder", "a Sequence of Replace U+2581, ByteFallback, Fuse and Strip of one space");
}
static tt_status tti_read_tokenizer(tt_tokenizer *t, const tt_json *root) {
    static const char *const absent[] = {"truncation", "padding"};
    const tt_json *added = tt_json_get(root, "added_tokens"), *node;
    tt_status status;
    size_t i;
    int metaspace;
    if (root->type != TT_JSON_OBJECT) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: the text is no JSON object"); }
    for (i = 0; i < 2; i++) { if (!tti_member_null(root, absent[i])) { return tti_unsupported(t->ctx, "", root, absent[i], "null"); } }
    status = tti_read_normalizer(t, root);
    metaspace = status == TT_OK && !t->characters && tti_type_is(tt_json_get(root, "pre_tokenizer"), "Metaspace");
    if (metaspace) { status = tti_read_metaspace(t, root); }
    if (status == TT_OK) { status = tti_read_post_processor(t, root); }
    if (status == TT_OK) { status = tti_read_decoder(t, root); }
    if (status == TT_OK && !tti_member_null(root, "added_tokens") && added->type != TT_JSON_ARRAY) { status = tti_unsupported(t->ctx, "", root, "added_tokens", "an array"); }
    if (status == TT_OK && !t->characters) { status = tti_read_pre_tokenizer(t, root); }
    if (status == TT_OK && t->characters && !metaspace && !tti_member_null(root, "pre_tokenizer")) { status = tti_unsupported(t->ctx, "", root, "pre_tokenizer", "null with this normalizer"); }
    for (node = added ? added->child : NULL; node && status == TT_OK; node = node->next) { status = tti_read_added(t, node); }
    if (status == TT_OK) { status = tti_read_model(t, tt_json_get(root, "model")); }
    for (i = 0; i < (size_t)(t->n_before + t->n_after) && status == TT_OK; i++) {
        int32_t id = i < (size_t)t->n_before ? t->before[i] : t->after[i - (size_t)t->n_before];
        if ((size_t)id >= t->n_tokens || !(t->tokens[id].flags & TTI_USED)) { status = tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: post_processor: id is %ld, which no token has", (long)id); }
    }
    return status == TT_OK ? tti_added_index(t) : status;
}

/* ---- reading .tiktoken ----
 * Lines of "base64(token) rank". There are no merges: two neighbours join if they spell a token, the lowest rank
 * first. A token can only come from the two parts that its own bytes are left as just before, so these give its
 * merge. Pattern and special tokens are known by the number of ranks. */
typedef struct tti_encoding { size_t n; tt_pretokenizer pretokenizer; struct { int32_t id; const char *text; } special[5]; } tti_encoding;
static const tti_encoding tti_encodings[] = {
    {50256, TT_PRETOKENIZE_GPT2, {{50256, "<|endoftext|>"}, {0, NULL}, {0, NULL}, {0, NULL}, {0, NULL}}},          /* r50k */
    {50280, TT_PRETOKENIZE_GPT2, {{50256, "<|endoftext|>"}, {0, NULL}, {0, NULL}, {0, NULL}, {0, NULL}}},          /* p50k */
    {100256, TT_PRETOKENIZE_CL100K, {{100257, "<|endoftext|>"}, {100258, "<|fim_prefix|>"}, {100259, "<|fim_middle|>"}, {100260, "<|fim_suffix|>"}, {100276, "<|endofprompt|>"}}},
    {199998, TT_PRETOKENIZE_O200K, {{199999, "<|endoftext|>"}, {200018, "<|endofprompt|>"}, {0, NULL}, {0, NULL}, {0, NULL}}},
    {128000, TT_PRETOKENIZE_LLAMA3, {{0, NULL}, {0, NULL}, {0, NULL}, {0, NULL}, {0, NULL}}}};

static int tti_base64(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}
/* Reads one line; *at moves behind it. Returns 0 if it is not "base64 rank". */
static int tti_rank_line(const char **at, const char *end, char *bytes, size_t room, size_t *size, int32_t *rank) {
    const char *p = *at;
    uint32_t bits = 0;
    int n_bits = 0;
    long value = 0;
    *size = 0;
    for (; p < end && tti_base64(*p) >= 0; p++) {
        bits = bits << 6 | (uint32_t)tti_base64(*p);
        n_bits += 6;
        if (n_bits < 8) { continue; }
        n_bits -= 8;
        if (*size == room) { return 0; }
        bytes[(*size)++] = (char)(bits >> n_bits & 0xFF);
    }
    while (p < end && *p == '=') { p++; }
    if (*size == 0 || p == end || *p++ != ' ' || p == end || *p < '0' || *p > '9') { return 0; }
    for (; p < end && *p >= '0' && *p <= '9'; p++) { if (value < TTI_MAX_VOCAB) { value = value * 10 + (*p - '0'); } }
    while (p < end && *p == '\r') { p++; }
    if (value >= TTI_MAX_VOCAB || (p < end && *p++ != '\n')) { return 0; }
    *rank = (int32_t)value;
    *at = p;
    return 1;
}
static tt_status tti_ranks_special(tt_tokenizer *t, const tti_encoding *encoding) {
    static const char *const llama[] = {"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"};
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < 5 && encoding->special[i].text && status == TT_OK; i++) {
        status = tti_added_add(t, encoding->special[i].id, encoding->special[i].text, strlen(encoding->special[i].text), TTI_SPECIAL);
    }
    for (i = 0; i < 256 && encoding->pretokenizer == TT_PRETOKENIZE_LLAMA3 && status == TT_OK; i++) {
        char name[64];
        snprintf(name, sizeof name, "<|reserved_special_token_%d|>", i - 8);
        status = tti_added_add(t, 128000 + i, i < 11 ? llama[i] : name, strlen(i < 11 ? llama[i] : name), TTI_SPECIAL);
    }
    if (encoding->pretokenizer == TT_PRETOKENIZE_LLAMA3) { t->before[t->n_before++] = 128000; }
    return status;
}
/* One merge for each token, found by merging its bytes with the merges of all shorter tokens. */
static tt_status tti_ranks_merges(tt_tokenizer *t) {
    size_t size, n_ids, i, longest = 0, n_ranks = t->n_tokens;
    void *merges = t->merges;
    tt_status status = tti_grow(t->ctx, &merges, &t->merges_capacity, n_ranks, sizeof *t->merges);
    if (status != TT_OK) { return status; }
    t->merges = (tti_merge *)merges;
    for (i = 0; i < n_ranks; i++) { if (t->tokens[i].size > longest) { longest = t->tokens[i].size; } }
    for (size = 2; size <= longest; size++) {
        for (i = 0; i < n_ranks && status == TT_OK; i++) {
            tti_bpe_worker *w = &t->workers[0];
            const char *unknown, *bytes;
            if (t->tokens[i].size != size) { continue; }
            status = tti_worker_grow(w, &w->symbols, &w->symbols_capacity, size, sizeof *w->symbols);
            if (status != TT_OK) { break; }
            bytes = tti_token_bytes(t, &t->tokens[i]);
            n_ids = tti_symbols(t, bytes, size, w->symbols, &unknown);
            if (n_ids > TTI_SHORT_PIECE) { status = tti_merge_long(t, w, w->symbols, &n_ids); }
            else { n_ids = tti_merge_short(t, w->symbols, n_ids); }
            if (status != TT_OK || unknown || n_ids != 2) { continue; }         /* never reached by merging */
            t->merges[i].left = w->symbols[0];
            t->merges[i].right = w->symbols[1];
            t->merges[i].result = (int32_t)i;
            status = tti_pair_add(t->ctx, &t->ranks, w->symbols[0], w->symbols[1], (int32_t)i);
        }
    }
    t->n_merges = n_ranks;
    return status;
}
/* The table of merges with a row per rank becomes one without the empty rows, as tokenizer.json has it. */
static tt_status tti_ranks_close_up(tt_tokenizer *t) {
    size_t i, n = t->n_merges;
    memset(t->ranks.slots, 0, t->ranks.n_slots * sizeof *t->ranks.slots);
    t->ranks.n = t->n_merges = 0;
    for (i = 0; i < n; i++) {
        tti_merge merge = t->merges[i];
        if (merge.result == 0) { continue; }
        if (tti_merge_add(t, merge.left, merge.right, merge.result) != TT_OK) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
static tt_status tti_read_ranks(tt_tokenizer *t, const char *at, const char *end) {
    const tti_encoding *encoding = NULL;
    unsigned long line = 0;
    size_t i;
    tt_status status = TT_OK;
    while (at < end && status == TT_OK) {
        char bytes[1024];
        size_t size;
        int32_t rank;
        line++;
        if (!tti_rank_line(&at, end, bytes, sizeof bytes, &size, &rank)) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: line %lu is not \"base64 rank\"", line); }
        if (tti_dict_find(&t->vocab, bytes, size) || ((size_t)rank < t->n_tokens && t->tokens[rank].flags)) {
            return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: line %lu has a token or rank that is there already", line);
        }
        status = tti_token_add(t, rank, bytes, size);
    }
    if (status != TT_OK) { return status; }
    for (i = 0; i < sizeof tti_encodings / sizeof *tti_encodings; i++) { if (tti_encodings[i].n == t->vocab.n) { encoding = &tti_encodings[i]; } }
    if (!encoding) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: the file has %lu ranks, expected 50256 (r50k), 50280 (p50k), 100256 (cl100k), 199998 (o200k) or 128000 (Llama 3)", (unsigned long)t->vocab.n);
    }
    t->pretokenizer = (int)encoding->pretokenizer;
    t->ignore_merges = 1;
    status = tti_tokenizer_finish(t);                /* for byte_id */
    for (i = 0; i < 256 && status == TT_OK; i++) {
        if (t->byte_id[i] < 0) { status = tt_fail(t->ctx, TT_ERR_FILE, "tt_tokenizer_parse: byte 0x%02X has no rank", (unsigned)i); }
    }
    if (status == TT_OK) { status = tti_ranks_merges(t); }
    if (status == TT_OK) { status = tti_ranks_close_up(t); }
    if (status == TT_OK) { status = tti_ranks_special(t, encoding); }
    return status == TT_OK ? tti_added_index(t) : status;
}

TT_API tt_tokenizer *tt_tokenizer_parse(tt_context *ctx, const char *file, size_t size) {
    const char *at = file;
    char bytes[1024];
    size_t length;
    int32_t rank;
    int ranks = tti_rank_line(&at, file + size, bytes, sizeof bytes, &length, &rank);
    tt_json *root = ranks ? NULL : tt_json_parse(ctx, file, size);
    tt_tokenizer *t = ranks || root ? tti_tokenizer_create(ctx) : NULL;
    if (t && (ranks ? tti_read_ranks(t, file, file + size) : tti_read_tokenizer(t, root)) != TT_OK) {
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

/* ---- writing tokenizer.json ---- */
/* Appends the JSON string by which the model's vocabulary and merges call a token. */
static tt_status tti_write_key(const tt_tokenizer *t, int32_t id, tt_text *key, tt_text *out) {
    const tti_token *token = &t->tokens[id];
    const char *bytes = tti_token_bytes(t, token);
    if (token->flags & TTI_ADDED || t->characters) { return tt_text_json(out, bytes, token->size); }
    if (tti_bytes_to_key(bytes, token->size, key) != TT_OK) { return TT_ERR_MEM; }
    return tt_text_json(out, key->data, key->size);
}
static const char *tti_write_bool(int value) { return value ? "true" : "false"; }
static tt_status tti_write_added(const tt_tokenizer *t, tt_text *out) {
    tt_status status = tt_text_format(out, "  \"added_tokens\": [");
    const char *comma = "";
    size_t i;
    for (i = 0; i < t->n_tokens && status == TT_OK; i++) {
        const tti_token *token = &t->tokens[i];
        if (!(token->flags & TTI_ADDED)) { continue; }
        status = tt_text_format(out, "%s\n    {\"id\": %lu, \"content\": ", comma, (unsigned long)i);
        if (status == TT_OK) { status = tt_text_json(out, tti_token_bytes(t, token), token->size); }
        if (status == TT_OK) {
            status = tt_text_format(out, ", \"single_word\": %s, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": %s, \"special\": %s}",
                                    tti_write_bool(token->flags & TTI_SINGLE), tti_write_bool(token->flags & TTI_LSTRIP), tti_write_bool(token->flags & TTI_RSTRIP),
                                    tti_write_bool(token->flags & TTI_NORMALIZED), tti_write_bool(token->flags & TTI_SPECIAL));
        }
        comma = ",";
    }
    return status == TT_OK ? tt_text_format(out, "%s],\n", *comma ? "\n  " : "") : status;
}
static tt_status tti_write_pre_tokenizer(const tt_tokenizer *t, tt_text *out) {
    int own_pattern = t->pretokenizer == TT_PRETOKENIZE_GPT2 || t->pretokenizer == TT_PRETOKENIZE_SMOLLM2;
    size_t i, n = sizeof tti_patterns / sizeof *tti_patterns;
    const char *close = "";
    tt_status status = tt_text_format(out, "  \"pre_tokenizer\": ");
    if (status == TT_OK && t->characters >= TTI_MARKS_ALWAYS) {
        return tt_text_format(out, "{\"type\": \"Metaspace\", \"replacement\": \"%s\", \"prepend_scheme\": \"%s\", \"split\": %s},\n", TTI_SPACE_MARK,
                              tti_prepend_schemes[(int)t->characters - (int)TTI_MARKS_ALWAYS], tti_write_bool(t->pretokenizer == TTI_PRETOKENIZE_EACH_MARK));
    }
    if (t->characters) { return status == TT_OK ? tt_text_format(out, "null,\n") : status; }
    for (i = 0; i < n && (int)tti_patterns[i].kind != t->pretokenizer; i++) { }
    if (status == TT_OK && t->pretokenizer == TT_PRETOKENIZE_SMOLLM2) {
        status = tt_text_format(out, "{\"type\": \"Sequence\", \"pretokenizers\": [\n    {\"type\": \"Digits\", \"individual_digits\": true},\n    ");
        close = "\n  ]}";
    } else if (status == TT_OK && i < n && !own_pattern) {
        status = tt_text_format(out, "{\"type\": \"Sequence\", \"pretokenizers\": [\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        if (status == TT_OK) { status = tt_text_json(out, tti_patterns[i].pattern, strlen(tti_patterns[i].pattern)); }
        if (status == TT_OK) { status = tt_text_format(out, "}, \"behavior\": \"Isolated\", \"invert\": false},\n    "); }
        close = "\n  ]}";
    }
    if (status != TT_OK) { return status; }
    return tt_text_format(out, "{\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"trim_offsets\": true, \"use_regex\": %s}%s,\n",
                          tti_write_bool(t->prefix_space), tti_write_bool(own_pattern), close);
}
static tt_status tti_write_template_token(const tt_tokenizer *t, int32_t id, const char *format, tt_text *out) {
    tt_status status = tt_text_format(out, "%s", format);
    return status == TT_OK ? tt_text_json(out, tti_token_bytes(t, &t->tokens[id]), t->tokens[id].size) : status;
}
static tt_status tti_write_post_processor(const tt_tokenizer *t, tt_text *out) {
    tt_status status = tt_text_format(out, "  \"post_processor\": ");
    int i, n = t->n_before + t->n_after;
    if (n == 0) { return status == TT_OK ? tt_text_format(out, "null,\n") : status; }
    if (status == TT_OK) { status = tt_text_format(out, "{\"type\": \"TemplateProcessing\", \"single\": ["); }
    for (i = 0; i <= n && status == TT_OK; i++) {
        if (i == t->n_before) { status = tt_text_format(out, "%s{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}", i ? ", " : ""); }
        if (status != TT_OK || i == n) { break; }
        status = tti_write_template_token(t, i < t->n_before ? t->before[i] : t->after[i - t->n_before], i >= t->n_before || i ? ", {\"SpecialToken\": {\"id\": " : "{\"SpecialToken\": {\"id\": ", out);
        if (status == TT_OK) { status = tt_text_format(out, ", \"type_id\": 0}}"); }
    }
    if (status == TT_OK) { status = tt_text_format(out, "],\n    \"pair\": [{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], \"special_tokens\": {"); }
    for (i = 0; i < n && status == TT_OK; i++) {
        int32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        status = tti_write_template_token(t, id, i ? ", " : "", out);
        if (status == TT_OK) { status = tti_write_template_token(t, id, ": {\"id\": ", out); }
        if (status == TT_OK) { status = tt_text_format(out, ", \"ids\": [%ld], \"tokens\": [", (long)id); }
        if (status == TT_OK) { status = tti_write_template_token(t, id, "", out); }
        if (status == TT_OK) { status = tt_text_format(out, "]}"); }
    }
    return status == TT_OK ? tt_text_format(out, "}},\n") : status;
}
static tt_status tti_write_pipeline(const tt_tokenizer *t, tt_text *out) {
    static const char nfc[] = "{\"type\": \"NFC\"}";
    static const char marks[] = "{\"type\": \"Prepend\", \"prepend\": \"" TTI_SPACE_MARK "\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"" TTI_SPACE_MARK "\"}";
    tt_status status;
    if (t->characters == TTI_MARKS_NORMALIZER) { status = tt_text_format(out, "  \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [%s%s%s]},\n", t->nfc ? nfc : "", t->nfc ? ", " : "", marks); }
    else { status = tt_text_format(out, "  \"normalizer\": %s,\n", t->nfc ? nfc : "null"); }
    if (status == TT_OK) { status = tti_write_pre_tokenizer(t, out); }
    if (status == TT_OK) { status = tti_write_post_processor(t, out); }
    if (status != TT_OK) { return status; }
    if (!t->characters) {
        return tt_text_format(out, "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n");
    }
    return tt_text_format(out, "  \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": \"%s\"}, \"content\": \" \"}, "
                          "{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}%s]},\n", TTI_SPACE_MARK, t->strip ? ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}" : "");
}
static tt_status tti_write_model(const tt_tokenizer *t, tt_text *key, tt_text *out) {
    const char *comma = "";
    size_t i;
    tt_status status = tt_text_format(out, "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
        "    \"byte_fallback\": %s,\n    \"ignore_merges\": %s,\n    \"vocab\": {", tti_write_bool(t->characters != TTI_MARKS_NONE), tti_write_bool(t->ignore_merges));
    for (i = 0; i < t->n_tokens && status == TT_OK; i++) {
        if (!(t->tokens[i].flags & TTI_IN_MODEL)) { continue; }
        status = tt_text_format(out, "%s\n      ", comma);
        if (status == TT_OK) { status = tti_write_key(t, (int32_t)i, key, out); }
        if (status == TT_OK) { status = tt_text_format(out, ": %lu", (unsigned long)i); }
        comma = ",";
    }
    if (status == TT_OK) { status = tt_text_format(out, "\n    },\n    \"merges\": ["); }
    for (i = 0; i < t->n_merges && status == TT_OK; i++) {
        status = tt_text_format(out, "%s\n      [", i ? "," : "");
        if (status == TT_OK) { status = tti_write_key(t, t->merges[i].left, key, out); }
        if (status == TT_OK) { status = tt_text_append(out, ", ", 2); }
        if (status == TT_OK) { status = tti_write_key(t, t->merges[i].right, key, out); }
        if (status == TT_OK) { status = tt_text_append(out, "]", 1); }
    }
    return status == TT_OK ? tt_text_format(out, "\n    ]\n  }\n}\n") : status;
}
TT_API tt_status tt_tokenizer_json(const tt_tokenizer *t, tt_text *out) {
    size_t before = out->size;
    tt_text key = TT_INIT;
    tt_status status = tt_text_format(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    key.ctx = t->ctx;
    if (status == TT_OK) { status = tti_write_added(t, out); }
    if (status == TT_OK) { status = tti_write_pipeline(t, out); }
    if (status == TT_OK) { status = tti_write_model(t, &key, out); }
    if (status != TT_OK && out->data) { out->size = before; out->data[before] = 0; }
    tt_text_free(&key);
    return status;
}
TT_API tt_status tt_tokenizer_save(const tt_tokenizer *t, const char *path) {
    tt_text json = TT_INIT;
    tt_status status;
    json.ctx = t->ctx;
    status = tt_tokenizer_json(t, &json);
    if (status == TT_OK) { status = tt_file_write(t->ctx, path, json.data, json.size); }
    tt_text_free(&json);
    return status;
}

/* ---- chat templates ----
 * A format is a row of texts around role and content. A template of Hugging Face is a program in Jinja; the known ones
 * are told by their flattened text, which is the same for all ways of writing the same program: no comments, no white
 * space between tags and none in them, strings in single quotes and joined, x.y for x['y']. */
enum { TTI_CHAT_TRIM = 1, TTI_CHAT_ROLES = 2, TTI_CHAT_DATE = 4, TTI_CHAT_THOUGHTS = 8 };
typedef struct tti_chat_format {
    const char *name, *token;                    /* token: by which a tokenizer tells its format; "" = any tokenizer, NULL = none */
    const char *begin, *head, *middle, *tail;    /* begin, then of each message: head, role, middle, content, tail */
    const char *prompt, *system;                 /* system: the first message where none is given; NULL = none     */
    int flags;                                   /* white space around the content is cut; roles are limited; ...  */
    const char *looks[2];                        /* flattened templates; * is any text, that of tools              */
} tti_chat_format;

#define TTI_CHATML "<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n"
#define TTI_LLAMA3 "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"
#define TTI_LOOKS_PROMPT(text) "{%ifadd_generation_prompt%}{{'" text "'}}{%endif%}"
#define TTI_LOOKS_TURN "'<|im_start|>'+message.role+'\\n'+message.content+'<|im_end|>\\n'"
#define TTI_LOOKS_CHATML(system) "{%formessageinmessages%}" system "{{" TTI_LOOKS_TURN "}}{%endfor%}" TTI_LOOKS_PROMPT("<|im_start|>assistant\\n")
#define TTI_LOOKS_SYSTEM(text) "{%ifloop.firstandmessages[0].role!='system'%}{{'<|im_start|>system\\n" text "<|im_end|>\\n'}}{%endif%}"
#define TTI_LOOKS_FIRST "{{'<|im_start|>system\\n'+messages[0].content+'<|im_end|>\\n'}}"
#define TTI_LOOKS_LLAMA "'<|start_header_id|>'+message.role+'<|end_header_id|>\\n\\n'+message.content|trim+'<|eot_id|>'"
#define TTI_LOOKS_TOOLS "{{bos_token}}{%ifcustom_toolsisdefined%}{%settools=custom_tools%}{%endif%}{%ifnottools_in_user_messageisdefined%}{%settools_in_user_message=true%}{%endif%}"
#define TTI_LOOKS_DATES(or_tools, tools) "{%ifnottoolsisdefined%}{%settools=none%}{%endif%}{%ifmessages[0].role=='system'%}{%setsystem_message=messages[0].content|trim%}{%setmessages=messages[1:]%}{%else%}" \
    "{%setsystem_message=''%}{%endif%}{{'<|start_header_id|>system<|end_header_id|>\\n\\n'}}{%if" or_tools "toolsisnotnone%}{{'Environment: ipython\\n'}}{%endif%}" tools \
    "{{'Cutting Knowledge Date: December 2023\\n'}}{{'Today Date: '+date_string+'\\n\\n'}}{%iftoolsisnotnoneandnottools_in_user_message%}*{%endif%}" \
    "{{system_message}}{{'<|eot_id|>'}}{%iftools_in_user_messageandnottoolsisnone%}*{%endif%}{%formessageinmessages%}" \
    "{%ifnot(message.role=='ipython'ormessage.role=='tool'or'tool_calls'inmessage)%}{{" TTI_LOOKS_LLAMA "}}{%elif'tool_calls'inmessage%}*{%endif%}{%endfor%}" \
    TTI_LOOKS_PROMPT("<|start_header_id|>assistant<|end_header_id|>\\n\\n")
#define TTI_SMOLLM2 "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define TTI_QWEN2 "You are a helpful assistant."
#define TTI_QWEN25 "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

static const tti_chat_format tti_chat_formats[] = {
    {"chatml", "<|im_start|>", "", TTI_CHATML, NULL, 0, {TTI_LOOKS_CHATML(""), NULL}},
    {"qwen2", NULL, "", TTI_CHATML, TTI_QWEN2, 0, {TTI_LOOKS_CHATML(TTI_LOOKS_SYSTEM(TTI_QWEN2)), NULL}},
    {"qwen2.5", NULL, "", TTI_CHATML, TTI_QWEN25, TTI_CHAT_ROLES,
     {"{%iftools%}*{%else%}{%ifmessages[0].role=='system'%}" TTI_LOOKS_FIRST "{%else%}{{'<|im_start|>system\\n" TTI_QWEN25 "<|im_end|>\\n'}}{%endif%}{%endif%}"
      "{%formessageinmessages%}{%if(message.role=='user')or(message.role=='system'andnotloop.first)or(message.role=='assistant'andnotmessage.tool_calls)%}"
      "{{" TTI_LOOKS_TURN "}}{%elifmessage.role=='assistant'%}*{%endif%}{%endfor%}" TTI_LOOKS_PROMPT("<|im_start|>assistant\\n"), NULL}},
    {"qwen3", NULL, "", TTI_CHATML, NULL, TTI_CHAT_ROLES | TTI_CHAT_THOUGHTS,
     {"{%iftools%}*{%else%}{%ifmessages[0].role=='system'%}" TTI_LOOKS_FIRST "{%endif%}{%endif%}"
      "{%setns=namespace(multi_step_tool=true,last_query_index=messages|length-1)%}{%formessageinmessages[::-1]%}{%setindex=(messages|length-1)-loop.index0%}"
      "{%ifns.multi_step_toolandmessage.role=='user'andnot(message.content.startswith('<tool_response>')andmessage.content.endswith('</tool_response>'))%}"
      "{%setns.multi_step_tool=false%}{%setns.last_query_index=index%}{%endif%}{%endfor%}{%formessageinmessages%}"
      "{%if(message.role=='user')or(message.role=='system'andnotloop.first)%}{{" TTI_LOOKS_TURN "}}"
      "{%elifmessage.role=='assistant'%}{%setcontent=message.content%}{%setreasoning_content=''%}"
      "{%ifmessage.reasoning_contentisdefinedandmessage.reasoning_contentisnotnone%}{%setreasoning_content=message.reasoning_content%}"
      "{%else%}{%if'</think>'inmessage.content%}{%setcontent=message.content.split('</think>')[-1].lstrip('\\n')%}"
      "{%setreasoning_content=message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')%}{%endif%}{%endif%}"
      "{%ifloop.index0>ns.last_query_index%}{%ifloop.lastor(notloop.lastandreasoning_content)%}"
      "{{'<|im_start|>'+message.role+'\\n<think>\\n'+reasoning_content.strip('\\n')+'\\n</think>\\n\\n'+content.lstrip('\\n')}}"
      "{%else%}{{'<|im_start|>'+message.role+'\\n'+content}}{%endif%}{%else%}{{'<|im_start|>'+message.role+'\\n'+content}}{%endif%}"
      "{%ifmessage.tool_calls%}*{%endif%}{{'<|im_end|>\\n'}}{%elifmessage.role=='tool'%}*{%endif%}{%endfor%}{%ifadd_generation_prompt%}{{'<|im_start|>assistant\\n'}}"
      "{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'<think>\\n\\n</think>\\n\\n'}}{%endif%}{%endif%}", NULL}},
    {"smollm2", NULL, "", TTI_CHATML, TTI_SMOLLM2, 0, {TTI_LOOKS_CHATML(TTI_LOOKS_SYSTEM(TTI_SMOLLM2)), NULL}},
    {"llama3.1", "<|finetune_right_pad_id|>", TTI_LLAMA3, NULL, TTI_CHAT_TRIM | TTI_CHAT_ROLES | TTI_CHAT_DATE,
     {TTI_LOOKS_TOOLS "{%ifnotdate_stringisdefined%}{%setdate_string='26 Jul 2024'%}{%endif%}"
      TTI_LOOKS_DATES("builtin_toolsisdefinedor", "{%ifbuiltin_toolsisdefined%}*{%endif%}"),
      TTI_LOOKS_TOOLS "{%ifnotdate_stringisdefined%}{%ifstrftime_nowisdefined%}{%setdate_string=strftime_now('%d %b %Y')%}{%else%}{%setdate_string='26 Jul 2024'%}"
      "{%endif%}{%endif%}" TTI_LOOKS_DATES("", "")}},
    {"llama3", "<|start_header_id|>", TTI_LLAMA3, NULL, TTI_CHAT_TRIM,
     {"{%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent=" TTI_LOOKS_LLAMA "%}{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}"
      "{{content}}{%endfor%}" TTI_LOOKS_PROMPT("<|start_header_id|>assistant<|end_header_id|>\\n\\n"), NULL}},
    {"plain", "", "", "", ": ", "\n", "assistant:", NULL, 0, {NULL, NULL}}};
#define TTI_N_CHAT_FORMATS (sizeof tti_chat_formats / sizeof *tti_chat_formats)
#define TTI_CHAT_NAMES "chatml, qwen2, qwen2.5, qwen3, smollm2, llama3.1, llama3 or plain"

static int tti_is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }
static int tti_flat_ends(const tt_text *text, const char *tail) {
    size_t size = strlen(tail);
    return text->size >= size && memcmp(text->data + text->size - size, tail, size) == 0;
}
/* Copies text that is printed as it stands, a line feed as \n. */
static tt_status tti_flat_copy(const char *at, const char *end, tt_text *out) {
    tt_status status = TT_OK;
    for (; at < end && status == TT_OK; at++) { status = *at == '\n' ? tt_text_append(out, "\\n", 2) : tt_text_append(out, at, 1); }
    return status;
}
/* A string that begins at `at` with its quote; what follows 'a'+ is joined to it. Returns where it ends. */
static const char *tti_flat_string(const char *at, const char *end, tt_text *out, tt_status *status) {
    const char *begin = at + 1, quote = *at;
    for (at++; at < end && *at != quote; at++) { if (*at == '\\' && at + 1 < end) { at++; } }
    if (tti_flat_ends(out, "'+")) { out->size -= 2; } else { *status = tt_text_append(out, "'", 1); }
    if (*status == TT_OK) { *status = tti_flat_copy(begin, at, out); }
    if (*status == TT_OK) { *status = tt_text_append(out, "'", 1); }
    return at < end ? at + 1 : end;
}
/* "['name'" at the end becomes ".name"; otherwise ']' is appended. */
static tt_status tti_flat_index(tt_text *out) {
    size_t at = out->size;
    if (!tti_flat_ends(out, "'")) { return tt_text_append(out, "]", 1); }
    for (at--; at > 0 && (out->data[at - 1] == '_' || (out->data[at - 1] >= 'a' && out->data[at - 1] <= 'z')); at--) { }
    if (at < 3 || at == out->size - 1 || out->data[at - 1] != '\'' || out->data[at - 2] != '[') { return tt_text_append(out, "]", 1); }
    memmove(out->data + at - 1, out->data + at, out->size - 1 - at);
    out->data[at - 2] = '.';
    out->size -= 2;
    return TT_OK;
}
/* The tag at `at`, "{% ... %}" or "{{ ... }}". Returns where it ends. */
static const char *tti_flat_tag(const char *at, const char *end, tt_text *out, tt_status *status) {
    char close = at[1] == '%' ? '%' : '}';
    *status = tt_text_append(out, at, 2);
    for (at += at + 2 < end && at[2] == '-' ? 3 : 2; at < end && *status == TT_OK; ) {
        if (*at == '\'' || *at == '"') { at = tti_flat_string(at, end, out, status); continue; }
        if (end - at >= 2 && *at == close && at[1] == '}') { *status = tt_text_append(out, at, 2); return at + 2; }
        if (*at == ']') { *status = tti_flat_index(out); }
        else if (!tti_is_blank(*at) && !(*at == '-' && end - at >= 3 && at[1] == close && at[2] == '}')) { *status = tt_text_append(out, at, 1); }
        at++;
    }
    return at;
}
/* Text between tags as Jinja prints it with trim_blocks and lstrip_blocks, which transformers sets: '-' in a tag takes all
 * white space beside it, "%}" the line feed behind it, "{%" the blanks before it on a line that begins with it. */
static tt_status tti_flat_between(const char *begin, const char *at, const char *tag, const char *end, tt_text *out) {
    const char *line;
    int cut = at - begin >= 3 && at[-3] == '-';
    int first = at == begin;
    if (cut) { while (at < tag && tti_is_blank(*at)) { at++; } }
    else if (!first && at[-2] != '}' && at < tag && *at == '\n') { at++; first = 1; }
    if (end - tag > 2 && tag[2] == '-') { while (tag > at && tti_is_blank(tag[-1])) { tag--; } }
    else if (tag < end && tag[1] != '{') {
        for (line = tag; line > at && (line[-1] == ' ' || line[-1] == '\t'); line--) { }
        if (line > at ? line[-1] == '\n' : first) { tag = line; }
    }
    return tti_flat_copy(at, tag, out);
}
static tt_status tti_chat_flatten(const char *begin, const char *end, tt_text *out) {
    const char *at = begin, *tag;
    tt_status status = TT_OK;
    if (end > begin && end[-1] == '\n') { end--; }
    while (at < end && status == TT_OK) {
        for (tag = at; tag < end && !(tag + 1 < end && *tag == '{' && (tag[1] == '%' || tag[1] == '{' || tag[1] == '#')); tag++) { }
        status = tti_flat_between(begin, at, tag, end, out);
        if (status != TT_OK || tag == end) { break; }
        if (tag[1] != '#') { at = tti_flat_tag(tag, end, out, &status); continue; }
        for (at = tag + 2; end - at >= 2 && !(*at == '#' && at[1] == '}'); at++) { }
        at = end - at >= 2 ? at + 2 : end;
    }
    return status == TT_OK ? tt_text_append(out, "", 0) : status;
}
static int tti_chat_looks(const char *look, const char *text) {      /* '*' in look stands for any text */
    const char *star = NULL, *from = text;
    while (*text) {
        if (*look == '*') { star = ++look; from = text; }
        else if (*look == *text) { look++; text++; }
        else if (star) { look = star; text = ++from; }
        else { return 0; }
    }
    return !*look;
}
TT_API const char *tt_chat_recognize(tt_context *ctx, const char *chat_template, size_t size) {
    const char *name = NULL;
    tt_text flat = TT_INIT;
    tt_status status;
    size_t k;
    flat.ctx = ctx;
    status = tti_chat_flatten(chat_template, chat_template + size, &flat);
    for (k = 0; k < 2 * TTI_N_CHAT_FORMATS && status == TT_OK && !name; k++) {
        const tti_chat_format *f = &tti_chat_formats[k / 2];
        if (f->looks[k % 2] && tti_chat_looks(f->looks[k % 2], flat.data)) { name = f->name; }
    }
    if (status == TT_OK && !name) { tt_fail(ctx, TT_ERR_FILE, "chat template %.70s... is not known here, choose the format by name: " TTI_CHAT_NAMES, flat.data); }
    tt_text_free(&flat);
    return name;
}

/* ---- prompts ----
 * A text that is put together from parts of two kinds: what a template says, whose special tokens count, and what is filled
 * in, where they are text. It is encoded as one text, so that words and spaces meet as they do on paper. */
typedef struct tti_composition {
    tt_text text;
    tti_part *parts;
    size_t n, capacity;
    tt_status status;                /* the first failure of tti_compose */
} tti_composition;
static void tti_compose(tti_composition *c, const char *bytes, size_t size, tt_special special) {
    void *parts = c->parts;
    if (c->status != TT_OK || size == 0) { return; }
    c->status = tti_grow(c->text.ctx, &parts, &c->capacity, c->n + 1, sizeof *c->parts);
    c->parts = (tti_part *)parts;
    if (c->status == TT_OK) { c->status = tt_text_append(&c->text, bytes, size); }
    if (c->status != TT_OK) { return; }
    if (c->n == 0 || c->parts[c->n - 1].special != special) { c->parts[c->n++].special = special; }
    c->parts[c->n - 1].end = c->text.size;
}
static void tti_compose_text(tti_composition *c, const char *text, tt_special special) { tti_compose(c, text, strlen(text), special); }
static void tti_composition_free(tti_composition *c) {
    tt_free(c->text.ctx, c->parts, c->capacity, sizeof *c->parts);
    tt_text_free(&c->text);
}
/* Appends the ids of the text from byte `from` on; the composition is of no use afterwards. */
static tt_status tti_composition_encode(const tt_tokenizer *t, tti_composition *c, size_t from, tt_ids *out) {
    size_t first = 0, i;
    if (c->status != TT_OK || from == c->text.size) { return c->status; }
    while (c->parts[first].end <= from) { first++; }
    for (i = first; i < c->n; i++) { c->parts[i].end -= from; }
    return tti_encode_parts(t, &t->workers[0], c->text.data + from, c->text.size - from, c->parts + first, c->n - first, 0, out);
}
/* {names} in a template are replaced by texts. */
typedef struct tti_slot { const char *name, *text; size_t size; tt_special special; } tti_slot;
static tti_slot tti_slot_make(const char *name, const char *text, size_t size, tt_special special) {
    tti_slot slot;
    slot.name = name;
    slot.text = text;
    slot.size = size;
    slot.special = special;
    return slot;
}
static const tti_slot *tti_slot_at(const char *at, const char *end, const tti_slot *slots, int n) {
    int i;
    for (i = 0; i < n; i++) {
        size_t size = strlen(slots[i].name);
        if ((size_t)(end - at) >= size && memcmp(at, slots[i].name, size) == 0) { return &slots[i]; }
    }
    return NULL;
}
static tt_status tti_render(const tt_tokenizer *t, const char *at, const char *end, const tti_slot *slots, int n, tt_ids *out) {
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
/* Makes the sequence that begins at out->data[from] begin as the file says. What begins so itself needs no second BOS; a chat
 * template, which is told by the token that opens its turns, says all that it wants. */
static tt_status tti_begin(const tt_tokenizer *t, tt_ids *out, size_t from) {
    size_t n = (size_t)t->n_before, have = out->size - from, k;
    tt_status status;
    if (n == 0 || (have >= n && memcmp(out->data + from, t->before, n * sizeof *t->before) == 0)) { return TT_OK; }
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
TT_API tt_status tt_encode_prompt(const tt_tokenizer *t, const char *text, size_t size, const char *question, size_t question_size, tt_ids *out) {
    tti_slot slot = tti_slot_make("{question}", question, question_size, TT_SPECIAL_TEXT);
    size_t before = out->size;
    tt_status status = tti_render(t, text, text + size, &slot, question ? 1 : 0, out);
    if (status == TT_OK) { status = tti_begin(t, out, before); }
    if (status != TT_OK) { out->size = before; }
    return status;
}

/* ---- conversations ---- */
static void tti_chat_head(const tti_chat_format *f, const char *role, tt_special special, tti_composition *out) {
    tti_compose_text(out, f->head, TT_SPECIAL_PARSE);
    tti_compose_text(out, role, special);
    tti_compose_text(out, f->middle, TT_SPECIAL_PARSE);
}
static void tti_chat_message(const tti_chat_format *f, const char *role, const char *content, size_t size, tt_special special, tti_composition *out) {
    tti_chat_head(f, role, special, out);
    tti_compose(out, content, size, special);
    tti_compose_text(out, f->tail, TT_SPECIAL_PARSE);
}
/* Cuts off what Python's str.strip() would, so that [*at, *end) is left. */
static void tti_chat_trim(const char **at, const char **end) {
    uint32_t c;
    size_t n;
    const char *p;
    while (*at < *end && (n = tti_utf8(*at, *end, &c), tti_char_class(c) == TTI_SPACE || (c >= 0x1C && c <= 0x1F))) { *at += n; }
    while (*end > *at && (p = tti_before(*at, *end, &c), tti_char_class(c) == TTI_SPACE || (c >= 0x1C && c <= 0x1F))) { *end = p; }
}
/* The first message is the system's: the dates, and what the first message says if it is one. */
static void tti_chat_dates(const tti_chat_format *f, const char *date, const char *content, tt_special special, tti_composition *out) {
    const char *end = content + strlen(content);
    tti_chat_head(f, "system", TT_SPECIAL_PARSE, out);
    tti_compose_text(out, "Cutting Knowledge Date: December 2023\nToday Date: ", TT_SPECIAL_PARSE);
    tti_compose_text(out, date ? date : "26 Jul 2024", special);
    tti_compose_text(out, "\n\n", TT_SPECIAL_PARSE);
    tti_chat_trim(&content, &end);
    tti_compose(out, content, (size_t)(end - content), special);
    tti_compose_text(out, f->tail, TT_SPECIAL_PARSE);
}
/* Qwen 3: an answer before the last question loses its thoughts; behind it they stand first, in the last one even if empty. */
static void tti_chat_thoughts(const tti_chat_format *f, const tt_message *m, int after_question, int last, tt_special special, tti_composition *out) {
    static const char open[] = "<think>", close[] = "</think>";
    const char *answer = m->content, *thoughts = m->content, *end = strstr(m->content, close), *p;
    tti_chat_head(f, m->role, special, out);
    if (!end) { end = thoughts; }
    else {
        for (p = end; p; p = strstr(answer, close)) { answer = p + sizeof close - 1; }
        while (*answer == '\n') { answer++; }
        while (end > thoughts && end[-1] == '\n') { end--; }
        for (p = strstr(thoughts, open); p && p + sizeof open - 1 <= end; p = strstr(thoughts, open)) { thoughts = p + sizeof open - 1; }
        while (thoughts < end && *thoughts == '\n') { thoughts++; }
    }
    if (after_question && (last || thoughts < end)) {
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
        size_t size = strlen(content);
        int tool = strncmp(content, open, sizeof open - 1) == 0 && size >= sizeof close - 1 && strcmp(content + size - (sizeof close - 1), close) == 0;
        if (strcmp(messages[i].role, "user") == 0 && !tool) { return i; }
    }
    return n - 1;
}
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
static tt_status tti_chat_check(tt_context *ctx, const tti_chat_format *f, const tt_message *messages, int n) {
    int i;
    for (i = 0; i < n; i++) {
        const char *role = messages[i].role;
        if (!role || !messages[i].content) {
            return tt_fail(ctx, TT_ERR_ARG, "tt_chat_render: messages[%d].%s is NULL, expected a text", i, role ? "content" : "role");
        }
        if (f->flags & TTI_CHAT_ROLES && strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0) {
            return tt_fail(ctx, TT_ERR_ARG, "tt_chat_render: messages[%d].role is \"%.40s\", expected system, user or assistant in %s", i, role, f->name);
        }
    }
    return TT_OK;
}
static tt_status tti_chat_compose(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n, int generation_prompt, tti_composition *out) {
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
    if (f->system && !system) { tti_chat_message(f, "system", f->system, strlen(f->system), TT_SPECIAL_PARSE, out); }
    if (f->flags & TTI_CHAT_DATE) { tti_chat_dates(f, d->date, system ? messages[0].content : "", special, out); }
    for (i = f->flags & TTI_CHAT_DATE ? system : 0; i < n; i++) {
        const char *content = messages[i].content, *end = content + strlen(content);
        if (f->flags & TTI_CHAT_THOUGHTS && strcmp(messages[i].role, "assistant") == 0) {
            tti_chat_thoughts(f, &messages[i], i > question, i == n - 1, special, out);
            continue;
        }
        if (f->flags & TTI_CHAT_TRIM) { tti_chat_trim(&content, &end); }
        tti_chat_message(f, messages[i].role, content, (size_t)(end - content), special, out);
    }
    if (generation_prompt) { tti_compose_text(out, f->prompt, TT_SPECIAL_PARSE); }
    return out->status;
}
TT_API tt_status tt_chat_render(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n, tt_text *out) {
    tti_composition c;
    tt_status status = tti_chat_compose(ctx, d, messages, n, d->generation_prompt, &c);
    if (status == TT_OK) { status = tt_text_append(out, c.text.data ? c.text.data : "", c.text.size); }
    tti_composition_free(&c);
    return status;
}
TT_API tt_status tt_chat_encode(tt_context *ctx, const tt_chat_desc *d, const tt_message *messages, int n, tt_ids *out, tt_ids *answer_or_null) {
    tti_composition prompt, all;
    size_t before = out->size, from = d->from, head;
    int turn = answer_or_null != NULL;
    tt_status status;
    if (!d->tokenizer) { return tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: tokenizer is NULL"); }
    if (turn && (n < 1 || !messages[n - 1].role || strcmp(messages[n - 1].role, "assistant") != 0)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: the last of %d messages is not the assistant's, expected its answer", n);
    }
    status = tti_chat_compose(ctx, d, messages, n - turn, turn || d->generation_prompt, &prompt);
    head = prompt.text.size;
    memset(&all, 0, sizeof all);
    all.text.ctx = ctx;
    if (status == TT_OK && turn) { status = tti_chat_compose(ctx, d, messages, n, 0, &all); }
    if (status == TT_OK && turn && (all.text.size < head || (head > 0 && memcmp(all.text.data, prompt.text.data, head) != 0))) {
        status = tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: the template changes what stands before the answer, messages[%d]", n - 1);
    }
    if (status == TT_OK && from > head) { status = tt_fail(ctx, TT_ERR_ARG, "tt_chat_encode: from is %lu, expected 0 to %lu, the bytes of the text", (unsigned long)from, (unsigned long)head); }
    if (status == TT_OK) { status = tti_composition_encode(d->tokenizer, &prompt, from, out); }
    if (status == TT_OK && from == 0) { status = tti_begin(d->tokenizer, out, before); }
    if (status == TT_OK && turn) { status = tti_composition_encode(d->tokenizer, &all, head, answer_or_null); }
    if (status != TT_OK) { out->size = before; }
    tti_composition_free(&prompt);
    tti_composition_free(&all);
    return status;
}

/* ---- training ----
 * The distinct pieces of the text are laid end to end; each symbol is a token at a position, linked to its
 * neighbours in the piece. A position is the left half of at most one pair, and all positions of one pair form a
 * list, so that counts are exact at all times and a merge touches only where its pair occurs. The pairs stand in
 * a heap, the most frequent on top. Total work: O(text * log(pairs)). */
typedef struct tti_symbol {
    int32_t id;
    int32_t pair;                    /* of (this, next); -1 = none               */
    uint32_t previous, next;         /* in the piece                             */
    uint32_t earlier, later;         /* positions of the same pair               */
    uint32_t piece;
} tti_symbol;
typedef struct tti_bpe_pair { int64_t count; int32_t left, right; uint32_t first, last; size_t heap_at; int barred; } tti_bpe_pair;
typedef struct tti_bpe {
    tt_context *ctx;
    tti_dict pieces;                 /* bytes to count */
    tti_symbol *symbols;
    size_t n_symbols;
    tti_bpe_pair *pairs;
    size_t n_pairs, pairs_capacity;
    tti_pair_map index;              /* (left, right) to its place in pairs */
    int32_t *heap;
    size_t heap_capacity;            /* n_pairs of it are in use */
    uint32_t *places;                /* where the pair being merged occurs */
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
    if (word) { word->value++; return TT_OK; }
    return tti_dict_add(&b->pieces, at, size, 1) ? TT_OK : TT_ERR_MEM;
}
/* Reads the text in growing chunks. Only pieces that what follows cannot change are counted; the rest waits. */
static tt_status tti_bpe_read(tti_bpe *b, const tt_tokenizer *t, tt_text_source text) {
    size_t chunk = (size_t)1 << 16, got = 1;
    tt_text wait = TT_INIT;
    tt_status status = TT_OK;
    wait.ctx = b->ctx;
    while (got > 0 && status == TT_OK) {
        const char *at, *stop;
        tti_scanner scanner;
        status = tti_text_reserve(&wait, chunk);
        if (status != TT_OK) { break; }
        got = text.read(text.user, wait.data + wait.size, chunk);
        if (got > chunk) { status = tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_train: text.read gave %lu bytes, expected at most %lu", (unsigned long)got, (unsigned long)chunk); break; }
        wait.size += got;
        at = wait.data;
        scanner.map = t->map;
        scanner.end = at + wait.size;
        scanner.hit = 0;
        while (at < scanner.end && status == TT_OK) {
            stop = tti_piece(t->pretokenizer, &scanner, at);
            if (got > 0 && scanner.hit) { break; }
            status = tti_bpe_count(b, at, (size_t)(stop - at));
            at = stop;
        }
        if (at == wait.data && chunk < wait.size) { chunk = wait.size; }      /* a piece longer than the chunk: rescans stay linear */
        wait.size = (size_t)(scanner.end - at);
        memmove(wait.data, at, wait.size);
    }
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
    size_t at = moved->heap_at, child;
    while (at > 0 && tti_bpe_before(moved, &b->pairs[b->heap[(at - 1) / 2]])) {
        tti_bpe_set(b, at, b->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    while ((child = 2 * at + 1) < b->n_pairs) {
        if (child + 1 < b->n_pairs && tti_bpe_before(&b->pairs[b->heap[child + 1]], &b->pairs[b->heap[child]])) { child++; }
        if (!tti_bpe_before(&b->pairs[b->heap[child]], moved)) { break; }
        tti_bpe_set(b, at, b->heap[child]);
        at = child;
    }
    tti_bpe_set(b, at, pair);
}
static void tti_bpe_weigh(tti_bpe *b, int32_t pair, int64_t change) {
    if (b->pairs[pair].barred) { return; }
    b->pairs[pair].count += change;
    tti_bpe_sift(b, pair);
}
static tt_status tti_bpe_pair_make(tti_bpe *b, int32_t left, int32_t right, int32_t *made) {
    void *pairs = b->pairs, *heap = b->heap;
    tti_bpe_pair *pair;
    *made = (int32_t)b->n_pairs;
    if (tti_grow(b->ctx, &pairs, &b->pairs_capacity, b->n_pairs + 1, sizeof *pair) != TT_OK) { return TT_ERR_MEM; }
    b->pairs = (tti_bpe_pair *)pairs;
    if (tti_grow(b->ctx, &heap, &b->heap_capacity, b->n_pairs + 1, sizeof *b->heap) != TT_OK) { return TT_ERR_MEM; }
    b->heap = (int32_t *)heap;
    if (tti_pair_add(b->ctx, &b->index, left, right, *made) != TT_OK) { return TT_ERR_MEM; }
    pair = &b->pairs[b->n_pairs];
    memset(pair, 0, sizeof *pair);
    pair->left = left;
    pair->right = right;
    pair->first = pair->last = TTI_NOWHERE;
    tti_bpe_set(b, b->n_pairs, *made);
    b->n_pairs++;
    tti_bpe_sift(b, *made);
    return TT_OK;
}
/* Enters the pair (symbol, next) into its list. */
static tt_status tti_bpe_link(tti_bpe *b, uint32_t at) {
    tti_symbol *s = &b->symbols[at];
    tti_bpe_pair *pair;
    if (s->next == TTI_NOWHERE) { return TT_OK; }
    s->pair = tti_pair_find(&b->index, s->id, b->symbols[s->next].id);
    if (s->pair < 0 && tti_bpe_pair_make(b, s->id, b->symbols[s->next].id, &s->pair) != TT_OK) { s->pair = -1; return TT_ERR_MEM; }
    pair = &b->pairs[s->pair];
    s->earlier = pair->last;
    s->later = TTI_NOWHERE;
    if (pair->last == TTI_NOWHERE) { pair->first = at; } else { b->symbols[pair->last].later = at; }
    pair->last = at;
    tti_bpe_weigh(b, s->pair, b->pieces.words[s->piece].value);
    return TT_OK;
}
static void tti_bpe_unlink(tti_bpe *b, uint32_t at) {
    tti_symbol *s = &b->symbols[at];
    tti_bpe_pair *pair;
    if (s->pair < 0) { return; }
    pair = &b->pairs[s->pair];
    if (s->earlier == TTI_NOWHERE) { pair->first = s->later; } else { b->symbols[s->earlier].later = s->later; }
    if (s->later == TTI_NOWHERE) { pair->last = s->earlier; } else { b->symbols[s->later].earlier = s->earlier; }
    tti_bpe_weigh(b, s->pair, -b->pieces.words[s->piece].value);
    s->pair = -1;
}
static tt_status tti_bpe_layout(tti_bpe *b, const int32_t byte_id[256]) {
    tt_status status = TT_OK;
    size_t n = b->pieces.bytes.size, i, k;
    if (n >= (size_t)INT32_MAX) { return tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_train: different pieces have %lu bytes, expected less than 2^31 - 1", (unsigned long)n); }
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
    for (i = 0; i < n && status == TT_OK; i++) { status = tti_bpe_link(b, (uint32_t)i); }
    return status;
}
static int tti_place_order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}
/* Replaces the pair by the token `id` wherever it occurs; "aaa" becomes "aa a", so the leftmost goes first. */
static tt_status tti_bpe_merge(tti_bpe *b, int32_t pair, int32_t id) {
    void *places = b->places;
    size_t n = 0, i;
    uint32_t at;
    tt_status status = TT_OK;
    for (at = b->pairs[pair].first; at != TTI_NOWHERE; at = b->symbols[at].later) { n++; }
    if (tti_grow(b->ctx, &places, &b->places_capacity, n, sizeof *b->places) != TT_OK) { return TT_ERR_MEM; }
    b->places = (uint32_t *)places;
    for (i = 0, at = b->pairs[pair].first; at != TTI_NOWHERE; at = b->symbols[at].later) { b->places[i++] = at; }
    for (i = 1; i < n && b->places[i - 1] < b->places[i]; i++) { }
    if (i < n) { qsort(b->places, n, sizeof *b->places, tti_place_order); }
    for (i = 0; i < n && status == TT_OK; i++) {
        tti_symbol *s = &b->symbols[b->places[i]];
        uint32_t gone = s->next, previous = s->previous;
        if (s->pair != pair) { continue; }           /* overlapped the one before */
        if (previous != TTI_NOWHERE) { tti_bpe_unlink(b, previous); }
        tti_bpe_unlink(b, b->places[i]);
        tti_bpe_unlink(b, gone);
        s->id = id;
        s->next = b->symbols[gone].next;
        if (s->next != TTI_NOWHERE) { b->symbols[s->next].previous = b->places[i]; }
        if (previous != TTI_NOWHERE) { status = tti_bpe_link(b, previous); }
        if (status == TT_OK) { status = tti_bpe_link(b, b->places[i]); }
    }
    return status;
}
/* Merges the most frequent pair until the vocabulary is full or no pair is frequent enough. A merge that would
 * spell a special token is barred: only TT_SPECIAL_PARSE may give one. Two merges may spell the same
 * token; so a pair may come back after its merge, which then keeps its first rank. */
static tt_status tti_bpe_train(tti_bpe *b, tt_tokenizer *t, size_t vocab_size, int64_t min_frequency) {
    tt_text bytes = TT_INIT, key = TT_INIT;
    tt_status status = TT_OK;
    bytes.ctx = key.ctx = t->ctx;
    while (t->n_tokens < vocab_size && b->n_pairs > 0 && status == TT_OK) {
        int32_t best = b->heap[0], id = (int32_t)t->n_tokens;
        const tti_bpe_pair *pair = &b->pairs[best];
        const tti_token *left = &t->tokens[pair->left], *right = &t->tokens[pair->right];
        const tti_word *known;
        if (pair->count < min_frequency) { break; }
        bytes.size = 0;
        status = tt_text_append(&bytes, tti_token_bytes(t, left), left->size);
        if (status == TT_OK) { status = tt_text_append(&bytes, tti_token_bytes(t, right), right->size); }
        if (status == TT_OK) { status = tti_bytes_to_key(bytes.data, bytes.size, &key); }
        if (status != TT_OK) { break; }
        if (tti_dict_find(&t->added, key.data, key.size)) {
            tti_bpe_weigh(b, best, -pair->count);
            b->pairs[best].barred = 1;
            continue;
        }
        known = tti_dict_find(&t->vocab, bytes.data, bytes.size);
        if (known) { id = (int32_t)known->value; } else { status = tti_token_add(t, id, bytes.data, bytes.size); }
        if (status == TT_OK && tti_pair_find(&t->ranks, b->pairs[best].left, b->pairs[best].right) < 0) {
            status = tti_merge_add(t, b->pairs[best].left, b->pairs[best].right, id);
        }
        if (status == TT_OK) { status = tti_bpe_merge(b, best, id); }
    }
    tt_text_free(&bytes);
    tt_text_free(&key);
    return status;
}

static tt_status tti_train_special(tt_tokenizer *t, const tt_tokenizer_desc *desc) {
    int i;
    for (i = 0; i < desc->n_special_tokens; i++) {
        const char *content = desc->special_tokens[i];
        size_t size = content ? strlen(content) : 0;
        uint32_t c = 0;
        const char *wrong = NULL;
        if (size == 0) { wrong = "empty, expected a text"; }
        else if (tti_utf8_invalid(content, content + size) < content + size) { wrong = "no valid UTF-8"; }
        else if (tti_utf8(content, content + size, &c) == size && tti_char_byte(c) >= 0) { wrong = "the name of a byte in tokenizer.json, expected a longer text"; }
        else if (tti_dict_find(&t->added, content, size)) { wrong = "there twice"; }
        if (wrong) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: special_tokens[%d] is %s", i, wrong); }
        if (tti_added_add(t, i, content, size, TTI_SPECIAL | TTI_IN_MODEL) != TT_OK) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
/* One token per byte of the alphabet, in the order of the bytes' characters. */
static tt_status tti_train_alphabet(tt_tokenizer *t, const tti_dict *pieces, const tt_tokenizer_desc *desc, size_t vocab_size) {
    unsigned char seen[256];
    size_t i, need = t->n_tokens;
    int c;
    memset(seen, desc->all_bytes ? 1 : 0, sizeof seen);
    for (i = 0; i < pieces->bytes.size; i++) { seen[(unsigned char)pieces->bytes.data[i]] = 1; }
    for (c = 0; c < desc->n_special_tokens; c++) {
        const char *at;
        for (at = desc->special_tokens[c]; *at; at++) { seen[(unsigned char)*at] = 1; }   /* they may be read as text */
    }
    for (i = 0; i < 256; i++) { need += seen[i]; }
    if (need > vocab_size) {
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: vocab_size is %lu, expected at least %lu: %lu special tokens and %lu bytes",
                       (unsigned long)vocab_size, (unsigned long)need, (unsigned long)t->n_tokens, (unsigned long)(need - t->n_tokens));
    }
    for (c = 0; c < 324; c++) {
        int b = tti_char_byte((uint32_t)c);
        char byte = (char)b;
        if (b < 0 || !seen[b]) { continue; }
        if (tti_token_add(t, (int32_t)t->n_tokens, &byte, 1) != TT_OK) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
/* A list of words in the place of a text: each is a piece. */
typedef struct tti_word_list { const char *const *words; int n; } tti_word_list;
static tt_status tti_words_check(const tt_tokenizer *t, const tti_word_list *list) {
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    int i;
    ids.ctx = t->ctx;
    for (i = 0; i < list->n && status == TT_OK; i++) {
        ids.size = 0;
        status = tt_encode(t, list->words[i], strlen(list->words[i]), TT_SPECIAL_TEXT, &ids);
        if (status == TT_OK && ids.size != 1) {
            status = tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_words: words[%d] is \"%.60s\", which is %lu tokens, expected a word with a space at most before it", i, list->words[i], (unsigned long)ids.size);
        }
    }
    tt_ids_free(&ids);
    return status;
}
static tt_status tti_words_count(tti_bpe *b, const tti_word_list *list) {
    tt_status status = TT_OK;
    int i;
    if (list->n < 0 || (list->n > 0 && !list->words)) { return tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_words: n is %d, expected the number of words", list->n); }
    for (i = 0; i < list->n && status == TT_OK; i++) {
        if (!list->words[i] || !*list->words[i]) { return tt_fail(b->ctx, TT_ERR_ARG, "tt_tokenizer_words: words[%d] is empty, expected a text", i); }
        status = tti_bpe_count(b, list->words[i], strlen(list->words[i]));
    }
    return status;
}
static tt_status tti_train(tt_tokenizer *t, tti_bpe *b, const tt_tokenizer_desc *desc, tt_text_source text, const tti_word_list *list) {
    int vocab_size = desc->vocab_size ? desc->vocab_size : 32000;
    int min_frequency = desc->min_frequency ? desc->min_frequency : 2;
    tt_status status;
    if (vocab_size < 0 || vocab_size > TTI_MAX_VOCAB) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: vocab_size is %d, expected 0 to %d", vocab_size, TTI_MAX_VOCAB); }
    if (min_frequency < 0) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: min_frequency is %d, expected >= 0", min_frequency); }
    if ((int)desc->pretokenizer < 0 || desc->pretokenizer > TT_PRETOKENIZE_TEKKEN) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: pretokenizer is %d, expected a tt_pretokenizer", (int)desc->pretokenizer); }
    if (desc->n_special_tokens < 0 || desc->n_special_tokens > TTI_MAX_VOCAB) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: n_special_tokens is %d, expected 0 to %d", desc->n_special_tokens, TTI_MAX_VOCAB); }
    if (desc->n_special_tokens > 0 && !desc->special_tokens) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: special_tokens is NULL, expected %d texts", desc->n_special_tokens); }
    if (!text.read && !list) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: text.read is NULL, expected a function"); }
    t->pretokenizer = (int)(desc->pretokenizer ? desc->pretokenizer : TT_PRETOKENIZE_GPT2);
    status = tti_train_special(t, desc);
    if (status == TT_OK) { status = list ? tti_words_count(b, list) : tti_bpe_read(b, t, text); }
    if (status == TT_OK) { status = tti_train_alphabet(t, &b->pieces, desc, (size_t)vocab_size); }
    if (status == TT_OK) { status = tti_tokenizer_finish(t); }       /* for byte_id */
    if (status == TT_OK) { status = tti_bpe_layout(b, t->byte_id); }
    if (status == TT_OK) { status = tti_bpe_train(b, t, (size_t)vocab_size, min_frequency); }
    if (status == TT_OK) { status = tti_tokenizer_finish(t); }
    if (status == TT_OK) { status = tti_added_index(t); }
    if (status == TT_OK && !list && tt_vocab_size(t) == 0) {
        status = tt_fail(t->ctx, TT_ERR_ARG, "tt_tokenizer_train: the text is empty: it gives no token");
    }
    return status == TT_OK && list ? tti_words_check(t, list) : status;
}
static tt_tokenizer *tti_trained(tt_context *ctx, const tt_tokenizer_desc *desc, tt_text_source text, const tti_word_list *list) {
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
TT_API tt_tokenizer *tt_tokenizer_words(tt_context *ctx, const tt_tokenizer_desc *desc_or_null, const char *const *words, int n) {
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
/* ==== 7. model ====================================================================== * A model is a list of named parameters and one forward function. tti_layer points into the list by role;
 * a NULL role is a switch that is off. The two families differ in three places: what stands before the
 * first layer (GPT-2 adds learned positions), the norm, and the shape of attention and MLP inputs. */

#define TTI_LAYER_PARAMS 20

/* A matrix of a layer with its bias and its adapter. GPT-2 stores w as [in, out] and fuses q, k, v into one; its "up" is
 * c_fc, and there is no gate. */
typedef struct tti_matrix { tt_tensor *w, *bias, *lora_a, *lora_b; } tti_matrix;
enum { TTI_QKV, TTI_Q, TTI_K, TTI_V, TTI_O, TTI_GATE, TTI_UP, TTI_DOWN, TTI_N_MATRICES };

typedef struct tti_layer {
    tt_tensor *norm1, *norm1_bias, *norm2, *norm2_bias;
    tt_tensor *q_norm, *k_norm;
    tti_matrix matrix[TTI_N_MATRICES];
    int use_rope;
} tti_layer;

/* generation_config.json; text: as it was read, to be written again, NULL = none. */
typedef struct tti_generation {
    char *text;
    int do_sample, top_k, n_stops;
    float temperature, top_p, min_p, repetition_penalty;   /* 0 = not given */
    int32_t stops[TT_MAX_MORE_EOS + 1];
} tti_generation;

struct tti_shards;                    /* chapter 7: open safetensors files */
struct tt_model {
    tt_context *ctx;
    tt_model_config config;
    int n_params, n_base, max_params; /* params[n_base ..] are adapters     */
    tt_tensor **params;               /* owned, in file order               */
    tti_layer *layers;                /* [num_hidden_layers]                */
    tt_tensor *embedding, *positions; /* positions: gpt2                    */
    tt_tensor *norm, *norm_bias;
    tt_tensor *head;                  /* the embedding if tied              */
    tt_tensor *cos_table, *sin_table; /* [positions used so far, head_dim/2]; NULL before the first and for gpt2 */
    tt_lora_desc lora;                /* target_modules: owned copies       */
    char **lora_targets;
    float lora_scale;
    int lora_off;
    struct tti_shards *mapped;        /* the files that weights lie in, or NULL */
    tti_generation generation;
    char *chat_template;              /* of the directory, to be written again; NULL = none */
};

/* ---- config ---- */
static int tti_is_qwen(const tt_model_config *c) { return strncmp(c->model_type, "qwen", 4) == 0; }

/* Fills in defaults and checks what later code relies on. */
static tt_status tti_config_resolve(tt_context *ctx, tt_model_config *c) {
    static const char *const who = "tt_model_config";
    const tt_rope_scaling *s = &c->rope_scaling;
    if (!c->model_type[0]) { snprintf(c->model_type, sizeof c->model_type, "%s", c->gpt2 ? "gpt2" : "llama"); }
    if (c->vocab_size < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: vocab_size is %d, expected >= 1", who, c->vocab_size); }
    if (c->hidden_size < 1 || c->hidden_size > INT_MAX / 16) { return tt_fail(ctx, TT_ERR_ARG, "%s: hidden_size is %d, expected 1..%d", who, c->hidden_size, INT_MAX / 16); }
    if (c->num_hidden_layers < 1 || c->num_hidden_layers > 1024) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: num_hidden_layers is %d, expected 1..1024", who, c->num_hidden_layers);
    }
    if (c->num_attention_heads < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: num_attention_heads is %d, expected >= 1", who, c->num_attention_heads); }
    if (c->head_dim == 0) {
        if (c->hidden_size % c->num_attention_heads) {
            return tt_fail(ctx, TT_ERR_ARG, "%s: hidden_size is %d, expected a multiple of num_attention_heads %d", who, c->hidden_size, c->num_attention_heads);
        }
        c->head_dim = c->hidden_size / c->num_attention_heads;
    }
    if (c->head_dim < 1 || c->head_dim > 1024 || (!c->gpt2 && c->head_dim % 2)) { return tt_fail(ctx, TT_ERR_ARG, "%s: head_dim is %d, expected an even number in 2..1024", who, c->head_dim); }
    if (c->num_attention_heads > INT_MAX / 16 / c->head_dim) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: num_attention_heads is %d, expected at most %d with head_dim %d", who, c->num_attention_heads, INT_MAX / 16 / c->head_dim, c->head_dim);
    }
    if (c->num_key_value_heads == 0) { c->num_key_value_heads = c->num_attention_heads; }
    if (c->num_key_value_heads < 1 || c->num_attention_heads % c->num_key_value_heads) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: num_key_value_heads is %d, expected a divisor of num_attention_heads %d", who, c->num_key_value_heads, c->num_attention_heads);
    }
    if (c->gpt2 && (c->num_key_value_heads != c->num_attention_heads || c->head_dim * c->num_attention_heads != c->hidden_size)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: gpt2 wants as many key-value heads as heads (%d, %d) and head_dim %d = hidden_size / heads",
                       who, c->num_key_value_heads, c->num_attention_heads, c->head_dim);
    }
    if (c->intermediate_size == 0) {
        c->intermediate_size = c->gpt2 ? 4 * c->hidden_size : (c->hidden_size * 8 / 3 + 31) / 32 * 32;
    }
    if (c->intermediate_size < 1 || c->intermediate_size > INT_MAX / 16) { return tt_fail(ctx, TT_ERR_ARG, "%s: intermediate_size is %d, expected 1..%d", who, c->intermediate_size, INT_MAX / 16); }
    if (c->max_position_embeddings == 0) { c->max_position_embeddings = 2048; }
    if (c->max_position_embeddings < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: max_position_embeddings is %d, expected >= 1", who, c->max_position_embeddings); }
    if (c->norm_eps == 0) { c->norm_eps = tti_is_qwen(c) ? 1e-6f : 1e-5f; }
    if (c->rope_theta == 0) { c->rope_theta = 10000.0f; }
    if (!(c->norm_eps > 0) || !(c->rope_theta > 0) || !isfinite(c->norm_eps) || !isfinite(c->rope_theta)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: norm_eps is %g and rope_theta %g, expected both > 0", who, (double)c->norm_eps, (double)c->rope_theta);
    }
    if (!(s->factor >= 0) || !isfinite(s->factor) || (s->factor > 0 && !(s->low_freq_factor > 0 && s->high_freq_factor > s->low_freq_factor && s->original_max_position_embeddings > 0))) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: rope_scaling has factor %g, low_freq_factor %g, high_freq_factor %g and original_max_position_embeddings %d, expected factor > 0, 0 < low < high and a context", who,
                       (double)s->factor, (double)s->low_freq_factor, (double)s->high_freq_factor, s->original_max_position_embeddings);
    }
    if (c->n_more_eos < 0 || c->n_more_eos > TT_MAX_MORE_EOS || (c->n_more_eos > 0 && c->eos_token_id < 0)) { return tt_fail(ctx, TT_ERR_ARG, "%s: n_more_eos is %d, expected 0..%d, and 0 without eos_token_id", who, c->n_more_eos, TT_MAX_MORE_EOS); }
    if (c->no_rope_interval < 0) { return tt_fail(ctx, TT_ERR_ARG, "%s: no_rope_interval is %d, expected >= 0", who, c->no_rope_interval); }
    if (c->no_rope_interval > c->num_hidden_layers) { c->no_rope_interval = 0; }     /* no layer is without: one way to say it */
    return TT_OK;
}

/* Without a generation_config.json, texts end as config.json says. */
static void tti_generation_of_config(const tt_model_config *c, tti_generation *g) {
    int i;
    memset(g, 0, sizeof *g);
    if (c->eos_token_id >= 0) { g->stops[g->n_stops++] = c->eos_token_id; }
    for (i = 0; i < c->n_more_eos; i++) { g->stops[g->n_stops++] = c->more_eos[i]; }
}

/* ---- parameters ---- */
/* Those that a file or another model fills have no data at first: a file's shapes are compared before memory is asked for. */
static tt_tensor *tti_param_create(tt_context *ctx, int ndim, const int *shape, const char *name, int with_data) {
    tt_tensor *t = with_data ? tt_parameter(ctx, ndim, shape, name) : tti_tensor_shell(ctx, TT_F32, ndim, shape, name);
    if (t) { t->requires_grad = 1; }
    return t;
}
static tt_status tti_param_alloc(tt_tensor *t) {
    if (!t->data) { t->data = t->ctx->backend->alloc(t->ctx, tti_tensor_bytes(t)); }
    return t->data ? TT_OK : TT_ERR_MEM;
}
/* A matrix starts from N(0, std), std < 0 means filled with -std (norm weights: 1), 0 zeros (biases). Each
 * parameter has a random stream of its own, named by the parameter, so adding one changes no other. */
static tt_tensor *tti_new_param(tt_model *m, const uint64_t *seed, double std, int rows, int cols, const char *format, int layer) {
    tt_context *ctx = m->ctx;
    char name[96];
    int shape[2];
    tt_tensor *t;
    float *values;
    size_t i;
    tt_status status;
    tt_rng rng;
    snprintf(name, sizeof name, format, layer);
    shape[0] = rows;
    shape[1] = cols;
    t = tti_param_create(ctx, cols ? 2 : 1, shape, name, seed != NULL);
    if (!t) { return NULL; }
    m->params[m->n_params++] = t;
    if (!seed || std == 0) { return t; }
    values = (float *)tt_alloc(ctx, t->size, sizeof *values);
    if (!values) { return NULL; }
    rng.seed = *seed;
    rng.stream = tt_hash(name, strlen(name), 0);
    rng.index = 0;
    for (i = 0; i < t->size; i++) { values[i] = (float)(std < 0 ? -std : std * tt_rng_normal(&rng)); }
    status = tt_tensor_set(t, values);
    tt_free(ctx, values, t->size, sizeof *values);
    return status == TT_OK ? t : NULL;
}
/* model.layers.N of the Llama family */
static int tti_llama_layer(tt_model *m, const uint64_t *seed, int n) {
    const tt_model_config *c = &m->config;
    tti_layer *l = &m->layers[n];
    int hidden = c->hidden_size, inner = c->intermediate_size, dim = c->head_dim;
    int q_dim = c->num_attention_heads * dim, kv_dim = c->num_key_value_heads * dim;
    double in_std = 1.0 / sqrt((double)hidden), depth = sqrt(2.0 * c->num_hidden_layers);
#define TTI_P(field, std, rows, cols, name) ((l->field = tti_new_param(m, seed, std, rows, cols, "model.layers.%d." name, n)) != NULL)
    return TTI_P(norm1, -1, hidden, 0, "input_layernorm.weight")
        && TTI_P(matrix[TTI_Q].w, in_std, q_dim, hidden, "self_attn.q_proj.weight")
        && TTI_P(matrix[TTI_K].w, in_std, kv_dim, hidden, "self_attn.k_proj.weight")
        && TTI_P(matrix[TTI_V].w, in_std, kv_dim, hidden, "self_attn.v_proj.weight")
        && TTI_P(matrix[TTI_O].w, 1.0 / sqrt((double)q_dim) / depth, hidden, q_dim, "self_attn.o_proj.weight")
        && (!c->attention_bias || (TTI_P(matrix[TTI_Q].bias, 0, q_dim, 0, "self_attn.q_proj.bias")
                                   && TTI_P(matrix[TTI_K].bias, 0, kv_dim, 0, "self_attn.k_proj.bias")
                                   && TTI_P(matrix[TTI_V].bias, 0, kv_dim, 0, "self_attn.v_proj.bias")))
        && (!c->attention_out_bias || TTI_P(matrix[TTI_O].bias, 0, hidden, 0, "self_attn.o_proj.bias"))
        && (!c->qk_norm || (TTI_P(q_norm, -1, dim, 0, "self_attn.q_norm.weight")
                            && TTI_P(k_norm, -1, dim, 0, "self_attn.k_norm.weight")))
        && TTI_P(norm2, -1, hidden, 0, "post_attention_layernorm.weight")
        && TTI_P(matrix[TTI_GATE].w, in_std, inner, hidden, "mlp.gate_proj.weight")
        && TTI_P(matrix[TTI_UP].w, in_std, inner, hidden, "mlp.up_proj.weight")
        && TTI_P(matrix[TTI_DOWN].w, 1.0 / sqrt((double)inner) / depth, hidden, inner, "mlp.down_proj.weight")
        && (!c->mlp_bias || (TTI_P(matrix[TTI_GATE].bias, 0, inner, 0, "mlp.gate_proj.bias")
                             && TTI_P(matrix[TTI_UP].bias, 0, inner, 0, "mlp.up_proj.bias")
                             && TTI_P(matrix[TTI_DOWN].bias, 0, hidden, 0, "mlp.down_proj.bias")));
#undef TTI_P
}
/* transformer.h.N of GPT-2; its matrices are stored [in, out] */
static int tti_gpt2_layer(tt_model *m, const uint64_t *seed, int n) {
    const tt_model_config *c = &m->config;
    tti_layer *l = &m->layers[n];
    int hidden = c->hidden_size, inner = c->intermediate_size;
    double depth = sqrt(2.0 * c->num_hidden_layers);
#define TTI_P(field, std, rows, cols, name) ((l->field = tti_new_param(m, seed, std, rows, cols, "transformer.h.%d." name, n)) != NULL)
    return TTI_P(norm1, -1, hidden, 0, "ln_1.weight") && TTI_P(norm1_bias, 0, hidden, 0, "ln_1.bias")
        && TTI_P(matrix[TTI_QKV].w, 0.02, hidden, 3 * hidden, "attn.c_attn.weight") && TTI_P(matrix[TTI_QKV].bias, 0, 3 * hidden, 0, "attn.c_attn.bias")
        && TTI_P(matrix[TTI_O].w, 0.02 / depth, hidden, hidden, "attn.c_proj.weight") && TTI_P(matrix[TTI_O].bias, 0, hidden, 0, "attn.c_proj.bias")
        && TTI_P(norm2, -1, hidden, 0, "ln_2.weight") && TTI_P(norm2_bias, 0, hidden, 0, "ln_2.bias")
        && TTI_P(matrix[TTI_UP].w, 0.02, hidden, inner, "mlp.c_fc.weight") && TTI_P(matrix[TTI_UP].bias, 0, inner, 0, "mlp.c_fc.bias")
        && TTI_P(matrix[TTI_DOWN].w, 0.02 / depth, inner, hidden, "mlp.c_proj.weight") && TTI_P(matrix[TTI_DOWN].bias, 0, hidden, 0, "mlp.c_proj.bias");
#undef TTI_P
}
static int tti_model_params(tt_model *m, const uint64_t *seed) {
    const tt_model_config *c = &m->config;
    int gpt2 = c->gpt2, hidden = c->hidden_size, n;
    double embedding_std = gpt2 || c->tie_word_embeddings ? 0.02 : 1.0;
    m->embedding = tti_new_param(m, seed, embedding_std, c->vocab_size, hidden, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", 0);
    if (!m->embedding) { return 0; }
    if (gpt2 && !(m->positions = tti_new_param(m, seed, 0.02, c->max_position_embeddings, hidden, "transformer.wpe.weight", 0))) { return 0; }
    for (n = 0; n < c->num_hidden_layers; n++) {
        if (!(gpt2 ? tti_gpt2_layer(m, seed, n) : tti_llama_layer(m, seed, n))) { return 0; }
        m->layers[n].use_rope = !gpt2 && !(c->no_rope_interval && (n + 1) % c->no_rope_interval == 0);
    }
    m->norm = tti_new_param(m, seed, -1, hidden, 0, gpt2 ? "transformer.ln_f.weight" : "model.norm.weight", 0);
    if (!m->norm) { return 0; }
    if (gpt2 && !(m->norm_bias = tti_new_param(m, seed, 0, hidden, 0, "transformer.ln_f.bias", 0))) { return 0; }
    m->head = c->tie_word_embeddings ? m->embedding : tti_new_param(m, seed, 0.02, c->vocab_size, hidden, "lm_head.weight", 0);
    return m->head != NULL;
}

/* Angle of pair i at position p: p * theta^(-2i/d) (RoFormer, arXiv 2104.09864), in single precision like
 * the reference implementations. Llama 3.1 slows the low frequencies down by `factor`, with a smooth
 * passage between the two wave lengths that the factors name. */
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
/* A table of n positions, or NULL. */
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
    if (t && tt_tensor_set(t, values) != TT_OK) { tt_tensor_destroy(t); t = NULL; }
    tt_free(ctx, values, size, sizeof *values);
    return t;
}
/* The tensor stays where it is, for the tape points to it; only its content changes. */
static void tti_rope_put(tt_tensor **table, tt_tensor *longer) {
    tt_tensor old;
    if (!*table) { *table = longer; return; }
    old = **table;
    **table = *longer;
    *longer = old;
    tt_tensor_destroy(longer);
}
/* The tables reach as far as positions have been used, in powers of two: a model may promise millions. A longer table begins
 * with the same numbers. Caches ask for their whole length, so that nothing grows while a backend holds launches back. */
static tt_status tti_rope_reserve(tt_model *m, int n_positions) {
    int most = m->config.max_position_embeddings, n = 64;
    tt_tensor *cosines, *sines;
    if (m->config.gpt2 || (m->cos_table && n_positions <= m->cos_table->shape[0])) { return TT_OK; }
    while (n < n_positions && n <= most / 2) { n *= 2; }
    if (n < n_positions || n > most) { n = most; }
    if (m->cos_table && n <= m->cos_table->shape[0]) { return TT_OK; }      /* a cache longer than the model's context */
    cosines = tti_rope_table(m, n, cos, "rope.cos");
    sines = cosines ? tti_rope_table(m, n, sin, "rope.sin") : NULL;
    if (!sines) { tt_tensor_destroy(cosines); return tt_error_status(m->ctx); }
    tti_rope_put(&m->cos_table, cosines);
    tti_rope_put(&m->sin_table, sines);
    return TT_OK;
}
static void tti_shards_destroy(struct tti_shards *shards);      /* chapter 7 */
static void tti_lora_forget(tt_model *m);
/* seed NULL: parameters have no data yet, for a caller that fills them all. The model owns the files `mapped` from here on,
 * also on failure. */
static tt_model *tti_model_new(tt_context *ctx, const tt_model_config *config, const uint64_t *seed, struct tti_shards *mapped) {
    tt_model *m = NULL;
    tt_model_config c = *config;
    if (ctx->broken == TT_OK && tti_config_resolve(ctx, &c) == TT_OK) { m = (tt_model *)tt_alloc(ctx, 1, sizeof *m); }
    if (!m) { tti_shards_destroy(mapped); return NULL; }
    m->ctx = ctx;
    m->mapped = mapped;
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
    return (tt_model *)tti_made(ctx, "tt_model_create", tti_model_new(ctx, config, &seed, NULL));
}
TT_API void tt_model_destroy(tt_model *m) {
    int i;
    if (!m) { return; }
    for (i = 0; i < m->n_params; i++) { tt_tensor_destroy(m->params[i]); }
    tti_lora_forget(m);
    tti_strfree(m->ctx, m->generation.text);
    tti_strfree(m->ctx, m->chat_template);
    tti_shards_destroy(m->mapped);
    tt_tensor_destroy(m->cos_table);
    tt_tensor_destroy(m->sin_table);
    tt_free(m->ctx, m->params, (size_t)m->max_params, sizeof *m->params);
    tt_free(m->ctx, m->layers, (size_t)m->config.num_hidden_layers, sizeof *m->layers);
    tt_free(m->ctx, m, 1, sizeof *m);
}
TT_API tt_status tt_model_assign(tt_model *to, const tt_model *from) {
    int i;
    if (to->n_params != from->n_params) { return tt_fail(to->ctx, TT_ERR_SHAPE, "tt_model_assign: %d parameters, expected %d", from->n_params, to->n_params); }
    for (i = 0; i < to->n_params; i++) {
        tt_tensor *a = to->params[i], *b = from->params[i];
        if (strcmp(a->name, b->name) != 0 || a->size != b->size || a->shape[0] != b->shape[0]) {
            return tt_fail(to->ctx, TT_ERR_SHAPE, "tt_model_assign: parameter %d is %s [%d,%d], expected %s [%d,%d]", i, b->name, b->shape[0], b->shape[1], a->name, a->shape[0], a->shape[1]);
        }
    }
    for (i = 0; i < to->n_params; i++) {
        tt_tensor *a = to->params[i], *b = from->params[i];
        tt_status status;
        if (a->lent) { return tt_fail(to->ctx, TT_ERR_ARG, "tt_model_assign: parameter %s lies in a mapped file", a->name); }
        status = a->dtype == b->dtype ? to->ctx->backend->copy(to->ctx, a->data, b->data, tti_tensor_bytes(a))
                                      : to->ctx->backend->cast(to->ctx, a->data, a->dtype, b->data, b->dtype, a->size);
        if (status != TT_OK) { return status; }
    }
    return TT_OK;
}
TT_API tt_model *tt_model_copy(const tt_model *from) {
    tt_model *m = tti_model_new(from->ctx, &from->config, NULL, NULL);
    int i;
    if (m && from->lora.rank && tt_model_lora_add(m, &from->lora) != TT_OK) { tt_model_destroy(m); return NULL; }
    if (m) { m->lora_off = from->lora_off; }
    if (m && from->generation.text) {
        char *text = tti_strdup(m->ctx, from->generation.text);
        if (!text) { tt_model_destroy(m); return NULL; }
        m->generation = from->generation;
        m->generation.text = text;
    }
    if (m && from->chat_template) {
        m->chat_template = tti_strdup(m->ctx, from->chat_template);
        if (!m->chat_template) { tt_model_destroy(m); return NULL; }
    }
    for (i = 0; m && i < m->n_params; i++) {
        m->params[i]->requires_grad = 0;
        if (tti_param_alloc(m->params[i]) != TT_OK) { tt_model_destroy(m); return NULL; }
    }
    if (m && tt_model_assign(m, from) != TT_OK) { tt_model_destroy(m); return NULL; }
    return m;
}
TT_API const tt_model_config *tt_model_config_get(const tt_model *m) { return &m->config; }
TT_API tt_context *tt_model_context(const tt_model *m) { return m->ctx; }
TT_API int tt_model_n_params(const tt_model *m) { return m->n_params; }
TT_API tt_tensor *tt_model_param(const tt_model *m, int index) { return index >= 0 && index < m->n_params ? m->params[index] : NULL; }
TT_API tt_tensor *tt_model_param_find(const tt_model *m, const char *name) {
    int i;
    for (i = 0; i < m->n_params; i++) { if (strcmp(m->params[i]->name, name) == 0) { return m->params[i]; } }
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

/* ---- adapters ---- */
static void tti_lora_forget(tt_model *m) {
    int i;
    for (i = 0; m->lora_targets && i < m->lora.n_target_modules; i++) { tti_strfree(m->ctx, m->lora_targets[i]); }
    tt_free(m->ctx, m->lora_targets, (size_t)m->lora.n_target_modules, sizeof *m->lora_targets);
    m->lora_targets = NULL;
    memset(&m->lora, 0, sizeof m->lora);
}
static tt_status tti_lora_resolve(tt_context *ctx, tt_lora_desc *d) {
    static const char *const who = "tt_lora_desc";
    int i;
    if (d->rank == 0) { d->rank = 8; }
    if (d->rank < 1 || d->rank > 65536) { return tt_fail(ctx, TT_ERR_ARG, "%s: rank is %d, expected 1..65536", who, d->rank); }
    if (d->alpha == 0) { d->alpha = 2.0f * (float)d->rank; }
    if (!(d->alpha > 0) || !isfinite(d->alpha)) { return tt_fail(ctx, TT_ERR_ARG, "%s: alpha is %g, expected > 0", who, (double)d->alpha); }
    if (d->n_target_modules < 0 || (d->n_target_modules > 0 && !d->target_modules)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: n_target_modules is %d, expected the number of target_modules", who, d->n_target_modules);
    }
    for (i = 0; i < d->n_target_modules; i++) {
        if (!d->target_modules[i] || !d->target_modules[i][0]) { return tt_fail(ctx, TT_ERR_ARG, "%s: target_modules[%d] is empty", who, i); }
    }
    return TT_OK;
}
/* The module of a matrix is its weight's name without ".weight"; a target is the module or its last parts. */
static int tti_lora_is_target(const char *weight, const char *target) {
    size_t module = strlen(weight) - strlen(".weight"), n = strlen(target);
    return n <= module && strncmp(weight + module - n, target, n) == 0 && (n == module || weight[module - n - 1] == '.');
}
static int tti_lora_wants(const tt_lora_desc *d, const tti_matrix *a) {
    int i;
    for (i = 0; a->w && i < d->n_target_modules; i++) { if (tti_lora_is_target(a->w->name, d->target_modules[i])) { return 1; } }
    return a->w && d->n_target_modules == 0;
}
/* How many matrices get an adapter; 0 with the error set if a target names none. */
static int tti_lora_count(const tt_model *m, const tt_lora_desc *d) {
    int total = 0, t, n, k, found;
    for (n = 0; n < m->config.num_hidden_layers; n++) { for (k = 0; k < TTI_N_MATRICES; k++) { total += tti_lora_wants(d, &m->layers[n].matrix[k]); } }
    for (t = 0; t < d->n_target_modules; t++) {
        for (found = 0, n = 0; n < m->config.num_hidden_layers; n++) {
            for (k = 0; k < TTI_N_MATRICES; k++) { found |= m->layers[n].matrix[k].w && tti_lora_is_target(m->layers[n].matrix[k].w->name, d->target_modules[t]); }
        }
        if (found) { continue; }
        tt_fail(m->ctx, TT_ERR_ARG, "tt_lora_desc: target_modules[%d] is \"%s\", expected a matrix of the layers such as %s", t, d->target_modules[t], m->config.gpt2 ? "c_attn" : "q_proj");
        return 0;
    }
    return total;
}
/* Both halves of one adapter; `empty`: without data, for a file to fill. */
static tt_status tti_lora_attach(tt_model *m, const tt_lora_desc *d, tti_matrix *a, int empty) {
    int in = a->w->shape[m->config.gpt2 ? 0 : 1], out = a->w->shape[m->config.gpt2 ? 1 : 0], shape[2];
    tt_text name = TT_INIT;
    tt_rng rng = TT_INIT;
    float *values;
    size_t i;
    tt_status status;
    name.ctx = m->ctx;
    status = tt_text_format(&name, "%.*s.lora_A.weight", (int)(strlen(a->w->name) - strlen(".weight")), a->w->name);
    if (status != TT_OK) { return status; }
    shape[0] = d->rank;
    shape[1] = in;
    a->lora_a = tti_param_create(m->ctx, 2, shape, name.data, !empty);
    if (a->lora_a) { m->params[m->n_params++] = a->lora_a; }
    rng.seed = d->seed;
    rng.stream = tt_hash(name.data, name.size, 0);
    name.data[name.size - strlen("A.weight")] = 'B';
    shape[0] = out;
    shape[1] = d->rank;
    a->lora_b = a->lora_a ? tti_param_create(m->ctx, 2, shape, name.data, !empty) : NULL;
    if (a->lora_b) { m->params[m->n_params++] = a->lora_b; }
    tt_text_free(&name);
    if (a->lora_b && empty) { return TT_OK; }
    values = a->lora_b ? (float *)tt_alloc(m->ctx, a->lora_a->size, sizeof *values) : NULL;
    if (!values) { return TT_ERR_MEM; }
    for (i = 0; i < a->lora_a->size; i++) { values[i] = (float)((2.0 * tt_rng_uniform(&rng) - 1.0) / sqrt((double)in)); }
    status = tt_tensor_set(a->lora_a, values);
    tt_free(m->ctx, values, a->lora_a->size, sizeof *values);
    return status;
}
static void tti_lora_detach(tt_model *m) {
    int n, k;
    for (n = 0; n < m->config.num_hidden_layers; n++) {
        for (k = 0; k < TTI_N_MATRICES; k++) { m->layers[n].matrix[k].lora_a = m->layers[n].matrix[k].lora_b = NULL; }
    }
    while (m->n_params > m->n_base) { tt_tensor_destroy(m->params[--m->n_params]); }
    tti_lora_forget(m);
}
static tt_status tti_lora_remember(tt_model *m, const tt_lora_desc *d) {
    int i;
    m->lora = *d;
    m->lora_targets = (char **)tt_alloc(m->ctx, (size_t)d->n_target_modules, sizeof *m->lora_targets);
    m->lora.target_modules = (const char *const *)m->lora_targets;
    for (i = 0; m->lora_targets && i < d->n_target_modules; i++) {
        m->lora_targets[i] = tti_strdup(m->ctx, d->target_modules[i]);
        if (!m->lora_targets[i]) { return TT_ERR_MEM; }
    }
    return m->lora_targets ? TT_OK : TT_ERR_MEM;
}
/* Room for n more parameters. */
static tt_status tti_params_grow(tt_model *m, int n) {
    tt_tensor **params = (tt_tensor **)tt_alloc(m->ctx, (size_t)m->max_params + (size_t)n, sizeof *params);
    if (!params) { return TT_ERR_MEM; }
    memcpy(params, m->params, (size_t)m->n_params * sizeof *params);
    tt_free(m->ctx, m->params, (size_t)m->max_params, sizeof *params);
    m->params = params;
    m->max_params += n;
    return TT_OK;
}
static tt_status tti_lora_build(tt_model *m, const tt_lora_desc *desc, int empty) {
    tt_lora_desc d = *desc;
    tt_status status = tti_lora_resolve(m->ctx, &d);
    int count, n, k;
    if (status != TT_OK) { return status; }
    if (m->lora.rank) { return tt_fail(m->ctx, TT_ERR_ARG, "tt_model_lora_add: the model has adapters, of rank %d", m->lora.rank); }
    count = tti_lora_count(m, &d);
    if (!count) { return tt_error_status(m->ctx); }
    status = tti_params_grow(m, 2 * count);
    if (status == TT_OK) { status = tti_lora_remember(m, &d); }
    for (n = 0; n < m->config.num_hidden_layers && status == TT_OK; n++) {
        for (k = 0; k < TTI_N_MATRICES && status == TT_OK; k++) {
            if (tti_lora_wants(&d, &m->layers[n].matrix[k])) { status = tti_lora_attach(m, &d, &m->layers[n].matrix[k], empty); }
        }
    }
    if (status != TT_OK) { tti_lora_detach(m); return status; }
    m->lora_scale = (float)((double)d.alpha / (d.use_rslora ? sqrt((double)d.rank) : (double)d.rank));
    m->lora_off = 0;
    return TT_OK;
}
static void tti_lora_freeze(tt_model *m) {
    int i;
    for (i = 0; i < m->n_base; i++) {
        m->params[i]->requires_grad = 0;
        tti_grad_free(m->params[i]);
    }
}
/* Beyond this rank no adapter could say more than its matrix. peft takes such ranks, so tt_model_lora_load does. */
static int tti_lora_most(const tt_model *m, const tt_lora_desc *d) {
    int most = 0, n, k;
    for (n = 0; n < m->config.num_hidden_layers; n++) {
        for (k = 0; k < TTI_N_MATRICES; k++) {
            const tti_matrix *a = &m->layers[n].matrix[k];
            int least = a->w && a->w->shape[0] < a->w->shape[1] ? a->w->shape[0] : a->w ? a->w->shape[1] : 0;
            if (tti_lora_wants(d, a) && least > most) { most = least; }
        }
    }
    return most;
}
TT_API tt_status tt_model_lora_add(tt_model *m, const tt_lora_desc *desc) {
    static const tt_lora_desc zero = TT_INIT;
    tt_lora_desc d = desc ? *desc : zero;
    tt_status status = tti_lora_resolve(m->ctx, &d);
    int most = status == TT_OK ? tti_lora_most(m, &d) : 0;
    if (most > 0 && d.rank > most) {
        return tt_fail(m->ctx, TT_ERR_ARG, "tt_model_lora_add: rank is %d, expected at most %d, the width of the matrices",
                       d.rank, most);
    }
    if (status == TT_OK) { status = tti_lora_build(m, &d, 0); }
    if (status == TT_OK) { tti_lora_freeze(m); }
    return status;
}
TT_API const tt_lora_desc *tt_model_lora_get(const tt_model *m) { return m->lora.rank ? &m->lora : NULL; }
TT_API int tt_model_lora_enable(tt_model *m, int on) {
    int was = m->lora.rank && !m->lora_off;
    m->lora_off = !on;
    return was;
}
/* W += scale B A, or its transpose where W is [in, out]. scaled: room for A. */
static tt_status tti_lora_fold(tt_model *m, const tti_matrix *a, float *scaled) {
    const tt_backend *backend = m->ctx->backend;
    int rank = m->lora.rank, gpt2 = m->config.gpt2, in = a->lora_a->shape[1], out = a->lora_b->shape[0];
    tt_status status = backend->unary(m->ctx, TT_SCALE, scaled, TT_F(a->lora_a), a->lora_a->size, m->lora_scale, 0);
    tt_gemm_args g;
    if (gpt2) {
        g = tti_gemm_args_of(in, out, rank, tti_view_of(scaled, in, 1), tti_view_of(TT_F(a->lora_b), rank, 1), TT_F(a->w));
    } else {
        g = tti_gemm_args_of(out, in, rank, tti_view_of(TT_F(a->lora_b), rank, 0), tti_view_of(scaled, in, 0), TT_F(a->w));
    }
    g.accumulate = 1;
    return status == TT_OK ? backend->gemm(m->ctx, &g) : status;
}
TT_API tt_status tt_model_lora_merge(tt_model *m) {
    tt_context *ctx = m->ctx;
    size_t largest = 1;
    tt_status status = TT_OK;
    float *scaled;
    int n, k;
    if (!m->lora.rank) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_merge: the model has no adapters"); }
    if (m->mapped) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_merge: the weights lie in a mapped file, expected a model of tt_model_load"); }
    for (n = m->n_base; n < m->n_params; n++) { if (m->params[n]->size > largest) { largest = m->params[n]->size; } }
    scaled = (float *)ctx->backend->alloc(ctx, largest * sizeof *scaled);
    if (!scaled) { return TT_ERR_MEM; }
    for (n = 0; n < m->config.num_hidden_layers; n++) {
        for (k = 0; k < TTI_N_MATRICES && status == TT_OK; k++) {
            if (m->layers[n].matrix[k].lora_a) { status = tti_lora_fold(m, &m->layers[n].matrix[k], scaled); }
        }
    }
    ctx->backend->free(ctx, scaled, largest * sizeof *scaled);
    if (status != TT_OK) { return status; }
    tti_lora_detach(m);
    for (n = 0; n < m->n_base; n++) { m->params[n]->requires_grad = 1; }
    return TT_OK;
}

/* ---- cache ---- */
TT_API tt_kv_cache *tt_kv_cache_create(tt_model *model, int n_slots, int capacity) {
    tt_kv_cache sizes, *cache;
    memset(&sizes, 0, sizeof sizes);
    sizes.n_layers = model->config.num_hidden_layers;
    sizes.n_slots = n_slots;
    sizes.capacity = capacity;
    sizes.n_heads = model->config.num_key_value_heads;
    sizes.width = sizes.n_heads * model->config.head_dim;
    cache = tti_cache_create(model->ctx, &sizes);
    if (!cache || tti_rope_reserve(model, capacity) == TT_OK) { return cache; }
    tt_kv_cache_destroy(cache);
    return NULL;
}

/* ---- forward ---- */

static tt_tensor *tti_norm_apply(const tt_model *m, tt_tensor *x, tt_tensor *w, tt_tensor *bias) {
    return bias ? tt_layernorm(m->ctx, x, w, bias, m->config.norm_eps) : tt_rmsnorm(m->ctx, x, w, m->config.norm_eps);
}
/* RMSNorm over each head's own channels (Qwen3). */
static tt_tensor *tti_head_norm(const tt_model *m, tt_tensor *x, tt_tensor *w) {
    int heads[2], flat[2];
    if (!w || !x) { return x; }
    flat[0] = x->shape[0];
    flat[1] = x->shape[1];
    heads[0] = (int)(x->size / (size_t)m->config.head_dim);
    heads[1] = m->config.head_dim;
    return tt_view(m->ctx, tt_rmsnorm(m->ctx, tt_view(m->ctx, x, 2, heads), w, m->config.norm_eps), 2, flat);
}
static int tti_adapts(const tt_model *m, const tti_matrix *a) { return a->lora_a && !m->lora_off; }
/* x W^T + b (GPT-2: x W + b), and what an adapter adds. */
static tt_tensor *tti_matrix_apply(const tt_model *m, tt_tensor *x, const tti_matrix *a) {
    tt_context *ctx = m->ctx;
    tt_tensor *y = m->config.gpt2 ? tt_matmul(ctx, x, a->w, a->bias) : tt_linear(ctx, x, a->w, a->bias);
    if (!tti_adapts(m, a)) { return y; }
    return tti_product_add(ctx, y, tt_scale(ctx, tt_linear(ctx, x, a->lora_a, NULL), m->lora_scale), a->lora_b);
}
static tt_tensor *tti_attention_block(const tt_model *m, const tti_layer *l, int layer, tt_tensor *x, const tt_batch *batch) {
    const tt_model_config *c = &m->config;
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
static tt_tensor *tti_mlp_block(const tt_model *m, const tti_layer *l, tt_tensor *x) {
    const tti_matrix *up = &l->matrix[TTI_UP];
    tt_context *ctx = m->ctx;
    tt_tensor *h;
    if (!m->config.gpt2) {
        h = tti_matrix_apply(m, x, up);
        h = tt_swiglu(ctx, tti_matrix_apply(m, x, &l->matrix[TTI_GATE]), h);
    } else if (tti_adapts(m, up)) { h = tt_gelu(ctx, tti_matrix_apply(m, x, up), 1); }
    else { h = tti_product_of(ctx, x, up->w, up->bias, 0, TT_GELU_TANH); }
    return tti_matrix_apply(m, h, &l->matrix[TTI_DOWN]);
}
typedef struct tti_layer_call { tt_model *model; const tt_batch *batch; int layer; } tti_layer_call;
/* One layer, in the form that tt_recompute can run twice. */
static tt_tensor *tti_layer_forward(tt_context *ctx, void *user, tt_tensor *const *inputs, int n_inputs) {
    tti_layer_call *call = (tti_layer_call *)user;
    const tt_model *m = call->model;
    const tti_layer *l = &m->layers[call->layer];
    tt_tensor *x = inputs[0];
    (void)n_inputs;
    x = tt_add(ctx, x, tti_attention_block(m, l, call->layer, tti_norm_apply(m, x, l->norm1, l->norm1_bias), call->batch));
    return tt_add(ctx, x, tti_mlp_block(m, l, tti_norm_apply(m, x, l->norm2, l->norm2_bias)));
}
/* Without gradients: the result takes the place of x, and all else that the layer left is given back, so that a pass over any
 * number of layers has the memory of one and stays in the caches. */
static tt_tensor *tti_layer_replace(tt_context *ctx, tti_layer_call *call, tt_tensor *x) {
    tti_mark host = tti_arena_mark(&ctx->host), device = tti_arena_mark(&ctx->device);
    tt_tensor *y = tti_layer_forward(ctx, call, &x, 1);
    if (!y || !tti_graph_ok(ctx, ctx->backend->copy(ctx, x->data, y->data, y->size * sizeof(float)))) { return NULL; }
    tti_arena_release(&ctx->host, host);
    tti_arena_release(&ctx->device, device);
    return x;
}
/* The residual stream after the last layer, before the last norm. */
static tt_tensor *tti_model_body(tt_model *m, const tt_batch *batch) {
    tt_context *ctx = m->ctx;
    tt_tensor *x;
    int n, last = 0;
    if (!batch) { tti_inputs_ok(ctx, "tt_model_forward: batch", (tt_tensor *const *)&batch, 1); return NULL; }
    for (n = 0; n < batch->n_tokens; n++) { if (batch->positions[n] > last) { last = batch->positions[n]; } }
    if (last >= m->config.max_position_embeddings) {
        return tti_graph_fail(ctx, "tt_model_forward", "position (max_position_embeddings too small)", last, m->config.max_position_embeddings - 1);
    }
    if (!tti_graph_ok(ctx, tti_rope_reserve(m, last + 1))) { return NULL; }
    x = tt_embedding(ctx, m->embedding, batch->tokens, batch->n_tokens);
    if (m->positions) { x = tt_add(ctx, x, tt_embedding(ctx, m->positions, batch->positions, batch->n_tokens)); }
    /* a frozen embedding needs no gradient, but tt_recompute passes one on only through its inputs */
    if (x && m->config.recompute && !ctx->no_grad && tti_any_grad(m->params, m->n_params)) { x->requires_grad = 1; }
    for (n = 0; n < m->config.num_hidden_layers && x; n++) {
        tti_layer_call *call = (tti_layer_call *)tti_step_alloc(ctx, sizeof *call);
        if (!call) { ctx->graph_error = 1; return NULL; }
        call->model = m;
        call->batch = batch;
        call->layer = n;
        if (ctx->no_grad) { x = tti_layer_replace(ctx, call, x); }
        else { x = m->config.recompute && !batch->cache ? tt_recompute(ctx, tti_layer_forward, call, &x, 1) : tti_layer_forward(ctx, call, &x, 1); }
    }
    if (x && batch->cache && !tti_graph_ok(ctx, tti_cache_advance(batch))) { return NULL; }
    return x;
}
TT_API tt_tensor *tt_model_forward(tt_model *m, const tt_batch *batch) {
    return tti_norm_apply(m, tti_model_body(m, batch), m->norm, m->norm_bias);
}
TT_API tt_tensor *tt_model_logits(tt_model *m, tt_tensor *hidden) { return tt_linear(m->ctx, hidden, m->head, NULL); }
TT_API tt_tensor *tt_model_logprobs(tt_model *m, const tt_batch *batch, float temperature, tt_tensor **entropy_out) {
    tt_tensor *x = tti_model_body(m, batch);
    if (entropy_out) { *entropy_out = NULL; }
    if (!x) { return NULL; }
    if (batch->n_targets < 1) { return tti_graph_fail(m->ctx, "tt_model_logprobs", "n_targets of the batch", batch->n_targets, 1); }
    x = tti_norm_apply(m, tt_gather_rows(m->ctx, x, batch->target_rows, batch->n_targets), m->norm, m->norm_bias);
    return tt_token_logprobs(m->ctx, x, m->head, batch->targets, temperature, entropy_out);
}

/* ==== 8. files ========================================================================
 * safetensors: eight bytes N (little endian), N bytes of JSON that name each tensor's type, shape and place,
 * then the tensors' bytes end to end. The reader maps the file and trusts nothing in it: every tensor must
 * lie inside, have the size that its shape says, and the tensors together must cover the data exactly. */

typedef struct tti_entry {
    const char *name;            /* in the parsed header     */
    const char *type;            /* "F32", "BF16", ...       */
    size_t bytes_each, size, begin, end;
    int ndim;
    size_t shape[8];
} tti_entry;
struct tt_safetensors {
    tt_context *ctx;
    char *path;
    const unsigned char *bytes;  /* the whole file           */
    size_t size;
    int mapped;
    tt_text text;                /* holds it if not mapped   */
    tt_json *header;
    tti_entry *entries;
    size_t n;
};

/* ---- reading ---- */
static size_t tti_type_bytes(const char *type) {
    static const struct { const char *name; size_t bytes; } types[] = {
        {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1},
        {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
    };
    size_t i;
    for (i = 0; i < sizeof types / sizeof types[0]; i++) { if (strcmp(type, types[i].name) == 0) { return types[i].bytes; } }
    return 0;
}
static int tti_json_size(const tt_json *node, size_t *out) {
    uint64_t value;
    if (!tti_json_whole(node, SIZE_MAX, &value)) { return 0; }
    *out = (size_t)value;
    return 1;
}
static tt_status tti_entry_parse(tt_safetensors *st, const tt_json *node, size_t data_size, tti_entry *e) {
    const tt_json *shape = tt_json_get(node, "shape"), *offsets = tt_json_get(node, "data_offsets"), *dim;
    size_t bytes = 0;
    e->name = node->key;
    if (strlen(node->key) != node->key_length) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: the name of tensor %s holds a zero byte", st->path, e->name); }
    e->type = tt_json_text(node, "dtype", "");
    e->bytes_each = tti_type_bytes(e->type);
    if (!e->bytes_each) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s has dtype \"%s\", expected F32, F16, BF16, ...", st->path, e->name, e->type); }
    if (!shape || shape->type != TT_JSON_ARRAY || shape->length > 8) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s has no shape of at most 8 numbers", st->path, e->name); }
    for (e->size = 1, dim = shape->child; dim; dim = dim->next) {
        if (!tti_json_size(dim, &e->shape[e->ndim]) || !tti_mul_size(e->size, e->shape[e->ndim], &e->size)) {
            return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s: shape[%d] is %g, expected a size", st->path, e->name, e->ndim, dim->number);
        }
        e->ndim++;
    }
    if (!offsets || offsets->length != 2 || !tti_json_size(offsets->child, &e->begin) || !tti_json_size(offsets->child->next, &e->end) || e->begin > e->end || e->end > data_size) {
        return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s: data_offsets are not two places in 0..%lu", st->path, e->name, (unsigned long)data_size);
    }
    if (!tti_mul_size(e->size, e->bytes_each, &bytes) || bytes != e->end - e->begin) {
        return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s holds %lu bytes, its shape wants %lu", st->path, e->name, (unsigned long)(e->end - e->begin), (unsigned long)bytes);
    }
    return TT_OK;
}
static int tti_entry_by_begin(const void *a, const void *b) {
    const tti_entry *x = *(const tti_entry *const *)a, *y = *(const tti_entry *const *)b;
    if (x->begin != y->begin) { return x->begin < y->begin ? -1 : 1; }
    return x->end < y->end ? -1 : x->end > y->end;
}
static int tti_entry_by_name(const void *a, const void *b) { return strcmp((*(const tti_entry *const *)a)->name, (*(const tti_entry *const *)b)->name); }
/* No name twice, no byte twice, no byte unused. */
static tt_status tti_entries_check(tt_safetensors *st, size_t data_size) {
    const tti_entry **order = (const tti_entry **)tt_alloc(st->ctx, st->n, sizeof *order);
    tt_status status = TT_OK;
    size_t i, at = 0;
    if (!order) { return TT_ERR_MEM; }
    for (i = 0; i < st->n; i++) { order[i] = &st->entries[i]; }
    if (st->n > 1) { qsort(order, st->n, sizeof *order, tti_entry_by_name); }
    for (i = 1; i < st->n && status == TT_OK; i++) {
        if (strcmp(order[i]->name, order[i - 1]->name) == 0) { status = tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s stands there twice", st->path, order[i]->name); }
    }
    if (st->n > 1) { qsort(order, st->n, sizeof *order, tti_entry_by_begin); }
    for (i = 0; i < st->n && status == TT_OK; i++) {
        if (order[i]->begin != at) {
            status = tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s begins at byte %lu of the data, expected %lu", st->path, order[i]->name, (unsigned long)order[i]->begin, (unsigned long)at);
        }
        at = order[i]->end;
    }
    if (status == TT_OK && at != data_size) { status = tt_fail(st->ctx, TT_ERR_FILE, "%s: tensors end at byte %lu of the data, the file at %lu", st->path, (unsigned long)at, (unsigned long)data_size); }
    tt_free(st->ctx, order, st->n, sizeof *order);
    return status;
}
/* An error that what a file says has led to, with the file. */
static tt_status tti_file_fail(tt_context *ctx, const char *path, const char *part) {
    char reason[TTI_ERROR_SIZE];
    if (tt_error_status(ctx) != TT_ERR_FILE && tt_error_status(ctx) != TT_ERR_ARG) { return tt_error_status(ctx); }
    snprintf(reason, sizeof reason, "%s", tt_error(ctx));
    return tt_fail(ctx, TT_ERR_FILE, "%s: %s%.300s", path, part, reason);
}
static tt_status tti_safetensors_parse(tt_safetensors *st) {
    tt_context *ctx = st->ctx;
    uint64_t length = 0;
    const tt_json *node;
    const tt_json *metadata;
    size_t data_size, begin;
    int i;
    if (st->size < 8) { return tt_fail(ctx, TT_ERR_FILE, "%s: %lu bytes are no safetensors file", st->path, (unsigned long)st->size); }
    for (i = 7; i >= 0; i--) { length = length << 8 | st->bytes[i]; }
    if (length > st->size - 8 || length > 100000000) {
        return tt_fail(ctx, TT_ERR_FILE, "%s: header length is %.0f, expected at most %lu (bytes left in the file)", st->path, (double)length, (unsigned long)(st->size - 8));
    }
    begin = 8 + (size_t)length;
    data_size = st->size - begin;
    st->header = tt_json_parse(ctx, (const char *)st->bytes + 8, (size_t)length);
    if (!st->header) { return tti_file_fail(ctx, st->path, "header: "); }
    if (st->header->type != TT_JSON_OBJECT) { return tt_fail(ctx, TT_ERR_FILE, "%s: header is no JSON object", st->path); }
    metadata = tt_json_get(st->header, "__metadata__");
    if (metadata && metadata->type != TT_JSON_OBJECT) { return tt_fail(ctx, TT_ERR_FILE, "%s: __metadata__ in the header is no object", st->path); }
    st->entries = (tti_entry *)tt_alloc(ctx, st->header->length + 1, sizeof *st->entries);
    if (!st->entries) { return TT_ERR_MEM; }
    for (node = st->header->child; node; node = node->next) {
        if (strcmp(node->key, "__metadata__") == 0) { continue; }
        if (tti_entry_parse(st, node, data_size, &st->entries[st->n]) != TT_OK) { return tt_error_status(ctx); }
        st->n++;
    }
    if (tti_entries_check(st, data_size) != TT_OK) { return tt_error_status(ctx); }
    for (i = 0; i < (int)st->n; i++) {
        st->entries[i].begin += begin;
        st->entries[i].end += begin;
    }
    return TT_OK;
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
    if (!st->path || tti_safetensors_map(st) != TT_OK || tti_safetensors_parse(st) != TT_OK) { tt_safetensors_close(st); st = NULL; }
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
static tt_dtype tti_entry_dtype(const tti_entry *e) {
    return strcmp(e->type, "F32") == 0 ? TT_F32 : strcmp(e->type, "BF16") == 0 ? TT_BF16 : strcmp(e->type, "F16") == 0 ? TT_F16 : TT_I32;
}
TT_API int tt_safetensors_count(const tt_safetensors *st) { return (int)st->n; }
TT_API tt_safetensors_info tt_safetensors_info_get(const tt_safetensors *st, int index) {
    tt_safetensors_info info = TT_INIT;
    const tti_entry *e;
    if (index < 0 || (size_t)index >= st->n) { return info; }
    e = &st->entries[index];
    info.name = e->name;
    info.dtype = tti_entry_dtype(e);
    info.ndim = e->ndim;
    memcpy(info.shape, e->shape, sizeof info.shape);
    info.size = e->size;
    return info;
}
TT_API int tt_safetensors_find(const tt_safetensors *st, const char *name) {
    size_t i;
    for (i = 0; i < st->n; i++) { if (strcmp(st->entries[i].name, name) == 0) { return (int)i; } }
    return -1;
}
TT_API tt_status tt_safetensors_read(tt_safetensors *st, int index, float *out) {
    const tti_entry *e;
    const unsigned char *from;
    size_t i;
    if (index < 0 || (size_t)index >= st->n) { return tt_fail(st->ctx, TT_ERR_ARG, "tt_safetensors_read: index is %d, expected 0..%d", index, (int)st->n - 1); }
    e = &st->entries[index];
    from = st->bytes + e->begin;
    if (strcmp(e->type, "F32") == 0) { memcpy(out, from, e->size * 4); return TT_OK; }
    if (strcmp(e->type, "BF16") == 0 || strcmp(e->type, "F16") == 0) {
        for (i = 0; i < e->size; i++) {
            uint16_t half;
            memcpy(&half, from + 2 * i, 2);
            out[i] = e->type[0] == 'B' ? tti_from_bf16(half) : tti_from_f16(half);
        }
        return TT_OK;
    }
    return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s has dtype %s, expected F32, F16 or BF16", st->path, e->name, e->type);
}
TT_API const char *tt_safetensors_metadata(const tt_safetensors *st, const char *key) {
    return tt_json_text(tt_json_get(st->header, "__metadata__"), key, NULL);
}

/* ---- writing ---- */
static const char *tti_dtype_name(tt_dtype dtype) { return dtype == TT_F32 ? "F32" : dtype == TT_BF16 ? "BF16" : "F16"; }
/* state: of a training state, with its checksum; NULL = none. */
static tt_status tti_safetensors_header(const tt_named *tensors, int n, tt_dtype dtype, const char *state, uint64_t checksum, tt_text *out) {
    tt_status status = tt_text_format(out, "{\"__metadata__\":{\"format\":\"pt\"");
    size_t at = 0, used, bytes;
    int i, d;
    if (status == TT_OK && state) {
        status = tt_text_format(out, ",\"checksum\":\"%016llx\",\"state\":", (unsigned long long)checksum);
        if (status == TT_OK) { status = tt_text_json(out, state, strlen(state)); }
    }
    if (status == TT_OK) { status = tt_text_append(out, "}", 1); }
    for (i = 0; i < n && status == TT_OK; i++) {
        const tt_tensor *t = tensors[i].tensor;
        bytes = t->size * tti_dtype_bytes(dtype);
        status = tt_text_append(out, ",", 1);
        if (status == TT_OK) { status = tt_text_json(out, tensors[i].name, strlen(tensors[i].name)); }
        if (status == TT_OK) { status = tt_text_format(out, ":{\"dtype\":\"%s\",\"shape\":[", tti_dtype_name(dtype)); }
        for (d = 0; d < t->ndim && status == TT_OK; d++) { status = tt_text_format(out, "%s%d", d ? "," : "", t->shape[d]); }
        if (status == TT_OK) { status = tt_text_format(out, "],\"data_offsets\":[%.0f,%.0f]}", (double)at, (double)(at + bytes)); }
        at += bytes;
    }
    if (status == TT_OK) { status = tt_text_append(out, "}", 1); }
    for (used = out->size; status == TT_OK && used % 8; used++) { status = tt_text_append(out, " ", 1); }
    return status;
}
static int tti_named_order(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }
/* A name that stands twice would make a file that no reader accepts. */
static tt_status tti_named_check(tt_context *ctx, const char *path, const tt_named *tensors, int n) {
    const char **names = (const char **)tt_alloc(ctx, (size_t)n, sizeof *names);
    tt_status status = TT_OK;
    int i;
    if (!names) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { names[i] = tensors[i].name; }
    if (n > 1) { qsort(names, (size_t)n, sizeof *names, tti_named_order); }
    for (i = 1; i < n && status == TT_OK; i++) {
        if (strcmp(names[i], names[i - 1]) == 0) { status = tt_fail(ctx, TT_ERR_ARG, "%s: tensor %s is listed twice", path, names[i]); }
    }
    tt_free(ctx, names, (size_t)n, sizeof *names);
    return status;
}
static size_t tti_named_largest(const tt_named *tensors, int n) {
    size_t largest = 1;
    int i;
    for (i = 0; i < n; i++) { if (tensors[i].tensor->size > largest) { largest = tensors[i].tensor->size; } }
    return largest;
}
/* One tensor's values in the file's type; values is scratch, narrowed in place. */
static tt_status tti_named_values(const tt_tensor *t, tt_dtype dtype, float *values) {
    tt_status status = tt_tensor_get(t, values);
    size_t i;
    for (i = 0; status == TT_OK && dtype != TT_F32 && i < t->size; i++) {
        uint16_t half = dtype == TT_BF16 ? tti_to_bf16(values[i]) : tti_to_f16(values[i]);
        memcpy((unsigned char *)values + 2 * i, &half, 2);
    }
    return status;
}
/* Where the first value stands whose exponent is all ones: an infinity, or no number; n if there is none. */
static size_t tti_not_finite(const void *values, size_t n, tt_dtype dtype) {
    const unsigned char *bytes = (const unsigned char *)values;
    uint16_t half, mask = dtype == TT_BF16 ? 0x7F80 : 0x7C00;
    uint32_t word;
    size_t i;
    for (i = 0; dtype == TT_F32 && i < n; i++) {
        memcpy(&word, bytes + 4 * i, 4);
        if ((word & 0x7F800000u) == 0x7F800000u) { return i; }
    }
    for (i = 0; dtype != TT_F32 && i < n; i++) {
        memcpy(&half, bytes + 2 * i, 2);
        if ((half & mask) == mask) { return i; }
    }
    return n;
}
/* A checksum is the sum of these over name and bytes of each tensor, so that their order is free. Any change within one word
 * of 8 bytes changes it for certain, for each step can be undone; any other change but for one case in 2^64. */
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
/* Before a file is touched: all that will be written is finite, so nothing else takes the place of a good file. Costs one pass
 * over the data. sum: see tti_checksum. */
static tt_status tti_named_scan(tt_context *ctx, const char *path, const tt_named *tensors, int n, tt_dtype dtype, uint64_t *sum) {
    size_t largest = tti_named_largest(tensors, n), bad;
    float *values = (float *)tt_alloc(ctx, largest, sizeof *values);
    tt_status status = values ? TT_OK : TT_ERR_MEM;
    int i;
    for (*sum = 0, i = 0; i < n && status == TT_OK; i++) {
        const tt_tensor *t = tensors[i].tensor;
        status = tti_named_values(t, dtype, values);
        if (status != TT_OK) { break; }
        *sum += tti_checksum(tensors[i].name, values, t->size * tti_dtype_bytes(dtype));
        bad = tti_not_finite(values, t->size, dtype);
        if (bad == t->size) { continue; }
        status = tt_fail(ctx, TT_ERR_NUMBER, "%s: not written, for value %lu of %s is not finite as %s", path, (unsigned long)bad, tensors[i].name, tti_dtype_name(dtype));
    }
    tt_free(ctx, values, largest, sizeof *values);
    return status;
}
static tt_status tti_safetensors_write(tt_context *ctx, const char *path, const tt_named *tensors, int n, tt_dtype dtype, const char *state, uint64_t checksum) {
    tt_text header = TT_INIT;
    tti_writer writer;
    unsigned char length[8];
    float *values = NULL;
    size_t largest = tti_named_largest(tensors, n);
    tt_status status = tti_named_check(ctx, path, tensors, n);
    int i;
    header.ctx = ctx;
    if (status == TT_OK) { status = tti_safetensors_header(tensors, n, dtype, state, checksum, &header); }
    if (status == TT_OK) { values = (float *)tt_alloc(ctx, largest, sizeof *values); }
    if (!values) { tt_text_free(&header); return status == TT_OK ? TT_ERR_MEM : status; }
    for (i = 0; i < 8; i++) { length[i] = (unsigned char)((uint64_t)header.size >> (8 * i)); }
    status = tti_writer_open(&writer, ctx, path);
    if (status == TT_OK) {                     /* from here on a failed write has closed the writer */
        status = tti_writer_write(&writer, length, 8);
        if (status == TT_OK) { status = tti_writer_write(&writer, header.data, header.size); }
        for (i = 0; i < n && status == TT_OK; i++) {
            status = tti_named_values(tensors[i].tensor, dtype, values);
            if (status != TT_OK) { tti_writer_abort(&writer); break; }
            status = tti_writer_write(&writer, values, tensors[i].tensor->size * tti_dtype_bytes(dtype));
        }
        if (status == TT_OK) { status = tti_writer_close(&writer); }
    }
    tt_free(ctx, values, largest, sizeof *values);
    tt_text_free(&header);
    return status;
}

/* ---- training state ---- */
static tt_status tti_state_want_f32(const char *path, const tt_named *tensors, int n) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < n && status == TT_OK; i++) { status = tti_want_f32(tensors[i].tensor, path); }
    return status;
}
static tt_status tti_state_save(tt_context *ctx, const char *path, const tt_named *tensors, int n, const char *json) {
    const char *state = json ? json : "";
    uint64_t sum = 0;
    tt_status status = tti_state_want_f32(path, tensors, n);
    if (status == TT_OK) { status = tti_named_scan(ctx, path, tensors, n, TT_F32, &sum); }
    return status == TT_OK ? tti_safetensors_write(ctx, path, tensors, n, TT_F32, state, sum + tti_checksum("state", state, strlen(state))) : status;
}
TT_API tt_status tt_state_save(tt_context *ctx, const char *path, const tt_named *tensors, int n, const char *json) {
    return tti_tried(ctx, "tt_state_save", tti_state_save(ctx, path, tensors, n, json));
}
static tt_status tti_shape_check(tt_context *ctx, const char *path, const char *name, const tti_entry *e, const tt_tensor *t, const char *who) {
    char got[192] = "", want[64] = "";
    int d, same = e->ndim == t->ndim;
    for (d = 0; d < e->ndim; d++) {
        same = same && e->shape[d] == (size_t)t->shape[d];
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%lu", d ? "," : "", (unsigned long)e->shape[d]);
    }
    if (same) { return TT_OK; }
    for (d = 0; d < t->ndim; d++) { snprintf(want + strlen(want), sizeof want - strlen(want), "%s%d", d ? "," : "", t->shape[d]); }
    return tt_fail(ctx, TT_ERR_FILE, "%s: tensor %s is [%s], %s [%s]", path, name, got, who, want);
}
/* A tensor takes its values, and its memory if it has none yet; other types are converted on the way. */
static tt_status tti_tensor_fill(tt_safetensors *st, int index, tt_tensor *t) {
    const tti_entry *e = &st->entries[index];
    tt_status status = tti_param_alloc(t);
    float *values;
    if (status != TT_OK) { return status; }
    if (strcmp(e->type, tti_dtype_name(t->dtype)) == 0) { return t->ctx->backend->upload(t->ctx, t->data, st->bytes + e->begin, tti_tensor_bytes(t)); }
    values = (float *)tt_alloc(t->ctx, t->size, sizeof *values);
    status = values ? tt_safetensors_read(st, index, values) : TT_ERR_MEM;
    if (status == TT_OK) { status = tt_tensor_set(t, values); }
    tt_free(t->ctx, values, t->size, sizeof *values);
    return status;
}
/* Each tensor of the list is in the file once, with its shape, and nothing else is. */
static tt_status tti_state_check(tt_safetensors *st, const tt_named *tensors, int n) {
    tt_status status = tti_state_want_f32(st->path, tensors, n);
    int i;
    if (status == TT_OK) { status = tti_named_check(st->ctx, st->path, tensors, n); }
    if (status != TT_OK) { return status; }
    if ((int)st->n != n) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: holds %d tensors, expected %d", st->path, (int)st->n, n); }
    for (i = 0; i < n && status == TT_OK; i++) {
        int k = tt_safetensors_find(st, tensors[i].name);
        if (k < 0) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s is missing", st->path, tensors[i].name); }
        if (strcmp(st->entries[k].type, "F32") != 0) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: tensor %s has dtype %s, expected F32", st->path, tensors[i].name, st->entries[k].type); }
        status = tti_shape_check(st->ctx, st->path, tensors[i].name, &st->entries[k], tensors[i].tensor, "the caller wants");
    }
    return status;
}
/* Every byte that matters is as it was written. Files of other programs have no checksum. */
static tt_status tti_state_unchanged(const tt_safetensors *st, const char *state) {
    const char *wanted = tt_safetensors_metadata(st, "checksum");
    uint64_t sum = tti_checksum("state", state, strlen(state));
    char found[32];
    size_t i;
    if (!wanted) { return TT_OK; }
    for (i = 0; i < st->n; i++) { sum += tti_checksum(st->entries[i].name, st->bytes + st->entries[i].begin, st->entries[i].end - st->entries[i].begin); }
    snprintf(found, sizeof found, "%016llx", (unsigned long long)sum);
    return strcmp(wanted, found) == 0 ? TT_OK : tt_fail(st->ctx, TT_ERR_FILE, "%s: damaged: its checksum is %s, expected %.32s as in its header", st->path, found, wanted);
}
/* The caller's JSON of a state, whose bytes are as they were written. */
static tt_status tti_state_read(const tt_safetensors *st, tt_text *out) {
    const char *state = tt_safetensors_metadata(st, "state");
    tt_status status;
    if (!state) { return tt_fail(st->ctx, TT_ERR_FILE, "%s: no training state (metadata \"state\")", st->path); }
    status = tti_state_unchanged(st, state);
    return status == TT_OK && out ? tt_text_append(out, state, strlen(state)) : status;
}

TT_API tt_status tt_state_json(tt_context *ctx, const char *path, tt_text *out) {
    tt_safetensors *st = tt_safetensors_open(ctx, path);
    tt_status status = st ? tti_state_read(st, out) : tt_error_status(ctx);
    tt_safetensors_close(st);
    return tti_tried(ctx, "tt_state_json", status);
}

/* All that can fail comes before the first tensor is changed. */
static tt_status tti_state_load(tt_safetensors *st, const tt_named *tensors, int n, tt_text *json_out) {
    size_t before = json_out ? json_out->size : 0;
    tt_status status;
    int i;
    TTI_TRY(tti_state_check(st, tensors, n));
    TTI_TRY(tti_state_read(st, json_out));
    for (i = 0; i < n; i++) { TTI_TRY(tti_tensor_fill(st, tt_safetensors_find(st, tensors[i].name), tensors[i].tensor)); }
done:
    if (status != TT_OK && json_out) { json_out->size = before; }
    return status;
}

TT_API tt_status tt_state_load(tt_context *ctx, const char *path, const tt_named *tensors, int n, tt_text *json_out) {
    tt_safetensors *st = tt_safetensors_open(ctx, path);
    tt_status status = st ? tti_state_load(st, tensors, n, json_out) : tt_error_status(ctx);
    tt_safetensors_close(st);
    return tti_tried(ctx, "tt_state_load", status);
}

/* ---- config.json ----
 * Each reader takes the field if it is there and not null, and notes the first that does not fit. */
typedef struct tti_config_reader { tt_context *ctx; const char *file; const tt_json *root; tt_status status; } tti_config_reader;

/* What a family of Hugging Face's transformers assumes of fields that its config.json leaves out. */
typedef struct tti_family {
    const char *type, *architecture;
    int max_positions, kv_heads, head_dim, window, tied;      /* 0: as many as heads, hidden / heads, no window */
    float rope_theta;
} tti_family;
static const tti_family *tti_family_find(const char *type) {
    static const tti_family families[] = {
        {"llama", "LlamaForCausalLM", 2048, 0, 0, 0, 0, 1e4f},      {"mistral", "MistralForCausalLM", 131072, 8, 0, 4096, 0, 1e4f},
        {"qwen2", "Qwen2ForCausalLM", 32768, 32, 0, 4096, 0, 1e4f}, {"qwen3", "Qwen3ForCausalLM", 32768, 32, 128, 4096, 0, 1e4f},
        {"smollm3", "SmolLM3ForCausalLM", 32768, 4, 0, 0, 1, 2e6f}, {"gpt2", "GPT2LMHeadModel", 1024, 0, 0, 0, 1, 1e4f},
    };
    size_t i;
    for (i = 0; i < sizeof families / sizeof families[0]; i++) { if (strcmp(type, families[i].type) == 0) { return &families[i]; } }
    return NULL;
}
static const char tti_family_names[] = "llama, mistral, qwen2, qwen3, smollm3 or gpt2";

static const tt_json *tti_field(const tti_config_reader *r, const char *key) {
    const tt_json *node = r->status == TT_OK ? tt_json_get(r->root, key) : NULL;
    return node && node->type != TT_JSON_NULL ? node : NULL;
}
static void tti_field_fail(tti_config_reader *r, const char *key, const tt_json *node, const char *want) {
    char value[64];
    switch (node->type) {
    case TT_JSON_NUMBER: snprintf(value, sizeof value, "%.40s", node->string); break;
    case TT_JSON_STRING: snprintf(value, sizeof value, "\"%.40s\"", node->string); break;
    case TT_JSON_BOOL: snprintf(value, sizeof value, "%s", node->number != 0 ? "true" : "false"); break;
    case TT_JSON_ARRAY: snprintf(value, sizeof value, "a list"); break;
    case TT_JSON_OBJECT: snprintf(value, sizeof value, "an object"); break;
    default: snprintf(value, sizeof value, "null"); break;
    }
    r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: %s is %s, expected %s", r->file, key, value, want);
}
static void tti_field_int(tti_config_reader *r, const char *key, int *out) {
    const tt_json *node = tti_field(r, key);
    uint64_t value;
    if (!node) { return; }
    if (!tti_json_whole(node, INT_MAX, &value)) { tti_field_fail(r, key, node, "a whole number in 0..2147483647"); return; }
    *out = (int)value;
}
static void tti_field_float(tti_config_reader *r, const char *key, float *out) {
    const tt_json *node = tti_field(r, key);
    if (!node) { return; }
    if (node->type != TT_JSON_NUMBER || !(node->number >= (double)FLT_MIN && node->number <= (double)FLT_MAX)) { tti_field_fail(r, key, node, "a float > 0"); return; }
    *out = (float)node->number;
}
static void tti_field_bool(tti_config_reader *r, const char *key, int *out) {
    const tt_json *node = tti_field(r, key);
    if (!node) { return; }
    if (node->type != TT_JSON_BOOL) { tti_field_fail(r, key, node, "true or false"); return; }
    *out = node->number != 0;
}
static void tti_field_is(tti_config_reader *r, const char *key, const char *want, const char *or_want) {
    const tt_json *node = tti_field(r, key);
    const char *text = node && node->type == TT_JSON_STRING ? node->string : "";
    if (!node || strcmp(text, want) == 0 || (or_want && strcmp(text, or_want) == 0)) { return; }
    tti_field_fail(r, key, node, want);
}
/* Fields that would change the forward pass. */
static void tti_field_only(tti_config_reader *r, const char *key, double value, const char *want) {
    const tt_json *node = tti_field(r, key);
    if (node && (node->number != value || (node->type != TT_JSON_NUMBER && node->type != TT_JSON_BOOL))) { tti_field_fail(r, key, node, want); }
}
/* A token id or a list of them; returns how many. Some files write -1 where there is none. */
static int tti_field_tokens(tti_config_reader *r, const char *key, int32_t out[TT_MAX_MORE_EOS + 1]) {
    const tt_json *node = tti_field(r, key), *token;
    uint64_t id;
    int n = 0;
    if (!node) { return 0; }
    for (token = node->type == TT_JSON_ARRAY ? node->child : node; token && r->status == TT_OK; token = node->type == TT_JSON_ARRAY ? token->next : NULL) {
        if (token->type == TT_JSON_NUMBER && token->number == -1) { continue; }
        if (!tti_json_whole(token, INT_MAX, &id)) { tti_field_fail(r, key, token, "a token id"); }
        else if (n > TT_MAX_MORE_EOS) { tti_field_fail(r, key, node, "at most 8 token ids"); }
        else { out[n++] = (int32_t)id; }
    }
    return r->status == TT_OK ? n : 0;
}
static void tti_config_tokens(tti_config_reader *r, tt_model_config *c) {
    int32_t ids[TT_MAX_MORE_EOS + 1];
    int n = tti_field_tokens(r, "bos_token_id", ids), i;
    c->bos_token_id = n ? ids[0] : -1;
    n = tti_field_tokens(r, "eos_token_id", ids);
    c->eos_token_id = n ? ids[0] : -1;
    for (i = 1; i < n; i++) { c->more_eos[c->n_more_eos++] = ids[i]; }
    c->has_pad_token = tti_field_tokens(r, "pad_token_id", ids) > 0;
    c->pad_token_id = c->has_pad_token ? ids[0] : 0;
}
static void tti_config_rope(tti_config_reader *r, tt_model_config *c) {
    static const char *const keys[2] = {"rope_scaling", "rope_parameters"};    /* older and newer files */
    int k;
    tti_field_float(r, "rope_theta", &c->rope_theta);
    tti_field_only(r, "partial_rotary_factor", 1, "1");
    for (k = 0; k < 2; k++) {
        tti_config_reader inner = *r;
        const tt_json *child;
        const char *type;
        inner.root = tti_field(r, keys[k]);
        if (!inner.root) { continue; }
        if (inner.root->type != TT_JSON_OBJECT) { tti_field_fail(r, keys[k], inner.root, "an object"); return; }
        for (child = inner.root->child; child; child = child->next) {        /* one object per kind of layer */
            if (child->type == TT_JSON_OBJECT) { r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: %s holds %.40s, expected one rope for all layers", r->file, keys[k], child->key); return; }
        }
        tti_field_only(&inner, "partial_rotary_factor", 1, "1");
        type = tt_json_text(inner.root, "rope_type", tt_json_text(inner.root, "type", "default"));
        tti_field_float(&inner, "rope_theta", &c->rope_theta);
        if (strcmp(type, "llama3") == 0) {
            tti_field_float(&inner, "factor", &c->rope_scaling.factor);
            tti_field_float(&inner, "low_freq_factor", &c->rope_scaling.low_freq_factor);
            tti_field_float(&inner, "high_freq_factor", &c->rope_scaling.high_freq_factor);
            tti_field_int(&inner, "original_max_position_embeddings", &c->rope_scaling.original_max_position_embeddings);
            if (inner.status == TT_OK && (c->rope_scaling.factor <= 0 || c->rope_scaling.low_freq_factor <= 0 || c->rope_scaling.high_freq_factor <= c->rope_scaling.low_freq_factor || c->rope_scaling.original_max_position_embeddings < 1)) {
                inner.status = tt_fail(r->ctx, TT_ERR_FILE, "%s: %s of type llama3 wants factor, low_freq_factor < high_freq_factor and original_max_position_embeddings", r->file, keys[k]);
            }
        } else if (strcmp(type, "default") != 0) {
            inner.status = tt_fail(r->ctx, TT_ERR_FILE, "%s: %s has type \"%.40s\", expected \"default\" or \"llama3\"", r->file, keys[k], type);
        }
        r->status = inner.status;
    }
}
static void tti_config_gpt2(tti_config_reader *r, tt_model_config *c) {
    c->gpt2 = 1;
    tti_field_int(r, "n_positions", &c->max_position_embeddings);
    tti_field_int(r, "n_embd", &c->hidden_size);
    tti_field_int(r, "n_layer", &c->num_hidden_layers);
    tti_field_int(r, "n_head", &c->num_attention_heads);
    tti_field_int(r, "n_inner", &c->intermediate_size);
    tti_field_float(r, "layer_norm_epsilon", &c->norm_eps);
    tti_field_is(r, "activation_function", "gelu_new", "gelu_pytorch_tanh");
    tti_field_only(r, "scale_attn_weights", 1, "true");
    tti_field_only(r, "scale_attn_by_inverse_layer_idx", 0, "false");
    tti_field_only(r, "add_cross_attention", 0, "false");
}
/* No sliding window, or one that never slides. */
static void tti_config_window(tti_config_reader *r, const tti_family *family, const tt_model_config *c) {
    const tt_json *types = tti_field(r, "layer_types"), *type, *given = tt_json_get(r->root, "sliding_window");
    int used = strcmp(c->model_type, "mistral") == 0, window = given ? 0 : family->window;
    tti_field_bool(r, "use_sliding_window", &used);
    tti_field_int(r, "sliding_window", &window);
    if (r->status == TT_OK && used && window > 0 && window < c->max_position_embeddings) {
        r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: sliding_window is %d, expected null or at least max_position_embeddings %d", r->file, window, c->max_position_embeddings);
    }
    for (type = types ? types->child : NULL; type && r->status == TT_OK; type = type->next) {
        if (type->type == TT_JSON_STRING && strcmp(type->string, "full_attention") == 0) { continue; }
        r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: layer_types has \"%.40s\", expected \"full_attention\"", r->file, type->type == TT_JSON_STRING ? type->string : "");
    }
}
/* SmolLM3 lists a 1 for each layer with RoPE, else gives an interval; a list must be one that an interval makes. */
static void tti_config_no_rope(tti_config_reader *r, tt_model_config *c) {
    const tt_json *list = tti_field(r, "no_rope_layers"), *node;
    int n = 0, interval = 4;
    tti_field_int(r, "no_rope_layer_interval", &interval);
    if (list && list->type != TT_JSON_ARRAY) { tti_field_fail(r, "no_rope_layers", list, "a list"); return; }
    if (list && r->status == TT_OK && list->length != (size_t)c->num_hidden_layers) {
        r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: no_rope_layers has %lu entries, expected num_hidden_layers %d", r->file, (unsigned long)list->length, c->num_hidden_layers);
    }
    if (list) { interval = 0; }
    for (node = list ? list->child : NULL; node && r->status == TT_OK; node = node->next) {
        n++;
        if (node->number == 0 && interval == 0) { interval = n; }
        if ((node->number != 0) == (interval == 0 || n % interval != 0)) { continue; }
        r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: no_rope_layers[%d] is %g, expected a 0 at every %d-th layer only", r->file, n - 1, node->number, interval);
    }
    c->no_rope_interval = interval;
}
static void tti_config_llama(tti_config_reader *r, const tti_family *family, tt_model_config *c) {
    const tt_json *kv_heads = tt_json_get(r->root, "num_key_value_heads"), *head_dim = tt_json_get(r->root, "head_dim");
    c->norm_eps = 1e-6f;
    c->rope_theta = family->rope_theta;
    c->num_key_value_heads = kv_heads ? 0 : family->kv_heads;
    c->head_dim = head_dim ? 0 : family->head_dim;
    tti_field_int(r, "hidden_size", &c->hidden_size);
    tti_field_int(r, "intermediate_size", &c->intermediate_size);
    tti_field_int(r, "num_hidden_layers", &c->num_hidden_layers);
    tti_field_int(r, "num_attention_heads", &c->num_attention_heads);
    tti_field_int(r, "num_key_value_heads", &c->num_key_value_heads);
    tti_field_int(r, "head_dim", &c->head_dim);
    tti_field_int(r, "max_position_embeddings", &c->max_position_embeddings);
    tti_field_float(r, "rms_norm_eps", &c->norm_eps);
    tti_field_is(r, "hidden_act", "silu", NULL);
    tti_field_bool(r, "attention_bias", &c->attention_bias);
    tti_field_bool(r, "mlp_bias", &c->mlp_bias);
    c->attention_out_bias = c->attention_bias;
    if (strcmp(c->model_type, "qwen2") == 0) { c->attention_bias = 1; c->attention_out_bias = 0; }
    c->qk_norm = strcmp(c->model_type, "qwen3") == 0;
    if (strcmp(c->model_type, "smollm3") == 0) { tti_config_no_rope(r, c); }
    tti_config_rope(r, c);
    tti_config_window(r, family, c);
}
/* Each family's own switches; a config that steps beyond them would come back as another model. */
static tt_status tti_config_in_family(tt_context *ctx, const tt_model_config *c) {
    const char *type = c->model_type, *field = NULL;
    int llama = strcmp(type, "llama") == 0, qwen2 = strcmp(type, "qwen2") == 0, qwen3 = strcmp(type, "qwen3") == 0;
    int smollm3 = strcmp(type, "smollm3") == 0, gpt2 = strcmp(type, "gpt2") == 0;
    if (!tti_family_find(type)) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_config: model_type is \"%s\", expected %s", type, tti_family_names); }
    if (c->gpt2 != gpt2) { field = "gpt2"; }
    else if (c->qk_norm != qwen3) { field = "qk_norm"; }
    else if (c->no_rope_interval && !smollm3) { field = "no_rope_interval"; }
    else if (c->mlp_bias && !llama && !smollm3) { field = "mlp_bias"; }
    else if (qwen2 ? !c->attention_bias : c->attention_bias && !llama && !qwen3 && !smollm3) { field = "attention_bias"; }
    else if (c->attention_out_bias != (c->attention_bias && !qwen2)) { field = "attention_out_bias"; }
    return field ? tt_fail(ctx, TT_ERR_ARG, "tt_model_config: %s does not have the value that a %s model has; choose another model_type", field, type) : TT_OK;
}
static tt_status tti_config_parse(tt_context *ctx, const char *file, const char *json, size_t size, tt_model_config *out) {
    tt_json *root = tt_json_parse(ctx, json, size);
    tti_config_reader r = TT_INIT;
    tt_model_config c = TT_INIT;
    const tti_family *family;
    const char *type;
    if (!root) { return tti_file_fail(ctx, file, ""); }
    r.ctx = ctx;
    r.file = file;
    r.root = root;
    type = tt_json_text(root, "model_type", "");
    family = tti_family_find(type);
    if (!family) { r.status = tt_fail(ctx, TT_ERR_FILE, "%s: model_type is \"%.40s\", expected %s", file, type, tti_family_names); }
    else {
        snprintf(c.model_type, sizeof c.model_type, "%s", type);
        c.max_position_embeddings = family->max_positions;
        c.tie_word_embeddings = family->tied;
        tti_field_int(&r, "vocab_size", &c.vocab_size);
        if (strcmp(type, "gpt2") == 0) { tti_config_gpt2(&r, &c); } else { tti_config_llama(&r, family, &c); }
        tti_field_bool(&r, "tie_word_embeddings", &c.tie_word_embeddings);
        tti_config_tokens(&r, &c);
        if (tti_field(&r, "quantization_config")) { tti_field_fail(&r, "quantization_config", tti_field(&r, "quantization_config"), "null: only plain weights can be read"); }
    }
    tt_json_free(ctx, root);
    if (r.status == TT_OK && (tti_config_resolve(ctx, &c) != TT_OK || tti_config_in_family(ctx, &c) != TT_OK)) { r.status = tti_file_fail(ctx, file, ""); }
    if (r.status == TT_OK) { *out = c; }
    return r.status;
}
TT_API tt_status tt_model_config_parse(tt_context *ctx, const char *json, size_t size, tt_model_config *out) {
    return tti_tried(ctx, "tt_model_config_parse", tti_config_parse(ctx, "config.json", json, size, out));
}

static const char *tti_bool(int value) { return value ? "true" : "false"; }
/* "bos_token_id": 1,\n  "eos_token_id": 2, or a list, or null */
static tt_status tti_config_json_tokens(const tt_model_config *c, tt_text *out) {
    tt_status status = c->bos_token_id < 0 ? tt_text_format(out, "  \"bos_token_id\": null,\n") : tt_text_format(out, "  \"bos_token_id\": %d,\n", c->bos_token_id);
    int i;
    if (status == TT_OK) { status = tt_text_format(out, "  \"eos_token_id\": %s", c->n_more_eos ? "[" : ""); }
    if (status == TT_OK) { status = c->eos_token_id < 0 ? tt_text_format(out, "null") : tt_text_format(out, "%d", c->eos_token_id); }
    for (i = 0; i < c->n_more_eos && status == TT_OK; i++) { status = tt_text_format(out, ", %d", c->more_eos[i]); }
    return status == TT_OK && c->n_more_eos ? tt_text_append(out, "]", 1) : status;
}
/* A number with a point or an exponent, so that other readers do not take it for a whole one. */
static tt_status tti_config_float(tt_text *out, const char *key, float value, const char *end) {
    char digits[48];
    if (!isfinite(value)) { return tt_fail(out->ctx, TT_ERR_ARG, "tt_model_config: %s is %g, expected a finite number", key, (double)value); }
    tti_format(digits, sizeof digits, "%R", (double)value);
    return tt_text_format(out, "\"%s\": %s%s%s", key, digits, strpbrk(digits, ".e") ? "" : ".0", end);
}
static tt_status tti_config_json_gpt2(const tt_model_config *c, tt_text *out) {
    tt_status status = tt_text_format(out, "  \"n_positions\": %d,\n  \"n_embd\": %d,\n  \"n_layer\": %d,\n  \"n_head\": %d,\n  \"activation_function\": \"gelu_new\",\n  ",
                                      c->max_position_embeddings, c->hidden_size, c->num_hidden_layers, c->num_attention_heads);
    if (status == TT_OK) { status = c->intermediate_size == 4 * c->hidden_size ? tt_text_format(out, "\"n_inner\": null,\n  ") : tt_text_format(out, "\"n_inner\": %d,\n  ", c->intermediate_size); }
    return status == TT_OK ? tti_config_float(out, "layer_norm_epsilon", c->norm_eps, ",\n") : status;
}
static tt_status tti_config_json_no_rope(const tt_model_config *c, tt_text *out) {
    tt_status status = tt_text_format(out, "  \"no_rope_layers\": [");
    int i;
    for (i = 1; i <= c->num_hidden_layers && status == TT_OK; i++) {
        status = tt_text_format(out, "%s%d", i > 1 ? ", " : "", c->no_rope_interval == 0 || i % c->no_rope_interval != 0);
    }
    if (status == TT_OK) { status = tt_text_format(out, "],\n"); }
    return status == TT_OK && c->no_rope_interval ? tt_text_format(out, "  \"no_rope_layer_interval\": %d,\n", c->no_rope_interval) : status;
}
static tt_status tti_config_json_llama(const tt_model_config *c, tt_text *out) {
    const tt_rope_scaling *s = &c->rope_scaling;
    int qwen2 = strcmp(c->model_type, "qwen2") == 0, smollm3 = strcmp(c->model_type, "smollm3") == 0, llama = strcmp(c->model_type, "llama") == 0;
    int derived_dim = (qwen2 || smollm3) && c->head_dim * c->num_attention_heads == c->hidden_size;     /* these two have no such field */
    tt_status status;
    status = tt_text_format(out, "  \"hidden_size\": %d,\n  \"intermediate_size\": %d,\n  \"num_hidden_layers\": %d,\n  \"num_attention_heads\": %d,\n"
                            "  \"num_key_value_heads\": %d,\n  \"max_position_embeddings\": %d,\n  \"hidden_act\": \"silu\",\n  ",
                            c->hidden_size, c->intermediate_size, c->num_hidden_layers, c->num_attention_heads, c->num_key_value_heads, c->max_position_embeddings);
    if (status == TT_OK && !derived_dim) { status = tt_text_format(out, "\"head_dim\": %d,\n  ", c->head_dim); }
    if (status == TT_OK && !qwen2 && strcmp(c->model_type, "mistral") != 0) { status = tt_text_format(out, "\"attention_bias\": %s,\n  ", tti_bool(c->attention_bias)); }
    if (status == TT_OK && (llama || smollm3)) { status = tt_text_format(out, "\"mlp_bias\": %s,\n  ", tti_bool(c->mlp_bias)); }
    if (status == TT_OK && !llama) { status = tt_text_format(out, "\"sliding_window\": null,\n  "); }
    if (status == TT_OK) { status = tti_config_float(out, "rms_norm_eps", c->norm_eps, ",\n  "); }
    if (status == TT_OK) { status = tti_config_float(out, "rope_theta", c->rope_theta, ",\n"); }
    if (status == TT_OK && s->factor > 0) {
        status = tt_text_format(out, "  \"rope_scaling\": {\"rope_type\": \"llama3\", \"original_max_position_embeddings\": %d, ", s->original_max_position_embeddings);
        if (status == TT_OK) { status = tti_config_float(out, "factor", s->factor, ", "); }
        if (status == TT_OK) { status = tti_config_float(out, "low_freq_factor", s->low_freq_factor, ", "); }
        if (status == TT_OK) { status = tti_config_float(out, "high_freq_factor", s->high_freq_factor, "},\n"); }
    }
    return status == TT_OK && smollm3 ? tti_config_json_no_rope(c, out) : status;
}
static tt_status tti_config_json(const tt_model_config *config, tt_dtype dtype, tt_text *out) {
    tt_model_config c = *config;
    size_t before = out->size;
    tt_status status = tti_config_resolve(out->ctx, &c);
    if (status == TT_OK) { status = tti_config_in_family(out->ctx, &c); }
    if (status != TT_OK) { return status; }
    status = tt_text_format(out, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n  \"vocab_size\": %d,\n", tti_family_find(c.model_type)->architecture, c.model_type, c.vocab_size);
    if (status == TT_OK) { status = c.gpt2 ? tti_config_json_gpt2(&c, out) : tti_config_json_llama(&c, out); }
    if (status == TT_OK) { status = tt_text_format(out, "  \"tie_word_embeddings\": %s,\n", tti_bool(c.tie_word_embeddings)); }
    if (status == TT_OK) { status = tti_config_json_tokens(&c, out); }
    if (status == TT_OK) { status = c.has_pad_token ? tt_text_format(out, ",\n  \"pad_token_id\": %d", c.pad_token_id) : tt_text_format(out, ",\n  \"pad_token_id\": null"); }
    if (status == TT_OK) { status = tt_text_format(out, ",\n  \"torch_dtype\": \"%s\"\n}\n", dtype == TT_F32 ? "float32" : dtype == TT_BF16 ? "bfloat16" : "float16"); }
    if (status != TT_OK && out->data) { out->size = before; out->data[before] = 0; }
    return status;
}
TT_API tt_status tt_model_config_json(const tt_model_config *config, tt_text *out) { return tti_config_json(config, TT_F32, out); }

/* ---- generation_config.json ---- */
static void tti_field_range(tti_config_reader *r, const char *key, double low, double high, const char *want, float *out) {
    const tt_json *node = tti_field(r, key);
    if (!node) { return; }
    if (node->type != TT_JSON_NUMBER || !(node->number >= low && node->number <= high)) { tti_field_fail(r, key, node, want); return; }
    *out = (float)node->number;
}
/* Fields that are not given stay as config.json has them. Takes the text. */
static tt_status tti_generation_parse(tt_context *ctx, const char *file, const char *text, size_t size, tti_generation *g) {
    tti_config_reader r = TT_INIT;
    int32_t stops[TT_MAX_MORE_EOS + 1];
    int n;
    tt_json *root = tt_json_parse(ctx, text, size);
    if (!root) { return tti_file_fail(ctx, file, ""); }
    r.ctx = ctx;
    r.file = file;
    r.root = root;
    tti_field_bool(&r, "do_sample", &g->do_sample);
    tti_field_int(&r, "top_k", &g->top_k);
    tti_field_range(&r, "temperature", 0, (double)FLT_MAX, "a number >= 0", &g->temperature);
    tti_field_range(&r, "top_p", 0, 1, "a number in 0..1", &g->top_p);
    tti_field_range(&r, "min_p", 0, 1, "a number in 0..1", &g->min_p);
    tti_field_range(&r, "repetition_penalty", (double)FLT_MIN, (double)FLT_MAX, "a number > 0", &g->repetition_penalty);
    if (tti_field(&r, "top_p") && g->top_p == 0) { g->top_p = FLT_MIN; }               /* the likeliest token alone: 0 here is "not given" */
    if (tti_field(&r, "temperature") && g->temperature == 0) { g->do_sample = 0; }     /* the same */
    n = tti_field_tokens(&r, "eos_token_id", stops);
    if (n > 0) {
        memcpy(g->stops, stops, (size_t)n * sizeof *stops);
        g->n_stops = n;
    }
    tt_json_free(ctx, root);
    if (r.status == TT_OK) { g->text = tti_strdup(ctx, text); }
    return r.status == TT_OK && !g->text ? TT_ERR_MEM : r.status;
}
static tt_status tti_generation_json(const tt_model *m, tt_text *out) {
    tt_status status;
    if (m->generation.text) { return tt_text_append(out, m->generation.text, strlen(m->generation.text)); }
    status = tt_text_format(out, "{\n");
    if (status == TT_OK) { status = tti_config_json_tokens(&m->config, out); }
    return status == TT_OK ? tt_text_format(out, "\n}\n") : status;
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

/* ---- model directories ---- */
static tt_status tti_path_join(tt_text *out, const char *dir, const char *name) {
    if (!*dir) { return tt_fail(out->ctx, TT_ERR_ARG, "cannot open %s: the name of its folder is empty", name); }
    out->size = 0;
    return tt_text_format(out, "%s/%s", dir, name);
}
typedef struct tti_shards { tt_context *ctx; tt_safetensors **files; char **names; size_t n, capacity; } tti_shards;
static void tti_shards_close(tti_shards *s) {
    size_t i;
    for (i = 0; i < s->n; i++) {
        tt_safetensors_close(s->files[i]);
        tti_strfree(s->ctx, s->names[i]);
    }
    tt_free(s->ctx, s->files, s->capacity, sizeof *s->files);
    tt_free(s->ctx, s->names, s->capacity, sizeof *s->names);
}
static void tti_shards_destroy(tti_shards *s) {
    if (!s) { return; }
    tti_shards_close(s);
    tt_free(s->ctx, s, 1, sizeof *s);
}
static tt_status tti_shards_add(tti_shards *s, const char *dir, const char *name, tt_text *path) {
    size_t i;
    for (i = 0; i < s->n; i++) { if (strcmp(s->names[i], name) == 0) { return TT_OK; } }
    if (!name[0] || strchr(name, '/') || strchr(name, '\\')) { return tt_fail(s->ctx, TT_ERR_FILE, "%s/model.safetensors.index.json: weight_map names \"%s\", expected a file beside it", dir, name); }
    if (tti_path_join(path, dir, name) != TT_OK) { return tt_error_status(s->ctx); }
    s->names[s->n] = tti_strdup(s->ctx, name);
    if (!s->names[s->n]) { return TT_ERR_MEM; }
    s->files[s->n] = tt_safetensors_open(s->ctx, path->data);
    s->n++;
    return s->files[s->n - 1] ? TT_OK : tt_error_status(s->ctx);
}
/* model.safetensors, or what model.safetensors.index.json lists. */
static tt_status tti_shards_open(tti_shards *s, const char *dir) {
    tt_context *ctx = s->ctx;
    tt_text path = TT_INIT, text = TT_INIT;
    tt_json *root = NULL;
    const tt_json *map = NULL, *node;
    tt_status status;
    int single;
    path.ctx = text.ctx = ctx;
    status = tti_path_join(&path, dir, "model.safetensors");
    single = status == TT_OK && tt_file_exists(path.data);              /* it counts, should there be old shards beside it */
    if (status == TT_OK && !single) { status = tti_path_join(&path, dir, "model.safetensors.index.json"); }
    if (status == TT_OK && !single && !tt_file_exists(path.data)) {
        status = tt_fail(ctx, TT_ERR_IO, "%s: neither model.safetensors nor model.safetensors.index.json can be read", dir);
    }
    if (status == TT_OK && !single) {
        status = tt_file_read(ctx, path.data, &text);
        if (status == TT_OK) { root = tt_json_parse(ctx, text.data, text.size); status = root ? TT_OK : tti_file_fail(ctx, path.data, ""); }
        map = tt_json_get(root, "weight_map");
        if (status == TT_OK && (!map || map->type != TT_JSON_OBJECT || !map->length)) { status = tt_fail(ctx, TT_ERR_FILE, "%s: no weight_map", path.data); }
    }
    if (status == TT_OK) {
        s->capacity = map ? map->length : 1;
        s->files = (tt_safetensors **)tt_alloc(ctx, s->capacity, sizeof *s->files);
        s->names = (char **)tt_alloc(ctx, s->capacity, sizeof *s->names);
        if (!s->files || !s->names) { status = TT_ERR_MEM; }
    }
    if (status == TT_OK && single) { status = tti_shards_add(s, dir, "model.safetensors", &path); }
    for (node = map ? map->child : NULL; node && status == TT_OK; node = node->next) { status = tti_shards_add(s, dir, node->type == TT_JSON_STRING ? node->string : "", &path); }
    tt_json_free(ctx, root);
    tt_text_free(&path);
    tt_text_free(&text);
    return status;
}
/* Where a tensor is stored, -1 if nowhere; GPT-2 files may leave out the prefix "transformer.". */
static int tti_shards_find(const tti_shards *s, const char *name, tt_safetensors **file) {
    size_t i;
    int k;
    for (i = 0; i < s->n; i++) {
        *file = s->files[i];
        if ((k = tt_safetensors_find(*file, name)) >= 0) { return k; }
    }
    return strncmp(name, "transformer.", 12) == 0 ? tti_shards_find(s, name + 12, file) : -1;
}
/* A tied pair may be stored under either name. */
static int tti_shards_find_param(const tti_shards *s, const tt_model *m, const tt_tensor *t, tt_safetensors **file) {
    int k = tti_shards_find(s, t->name, file);
    return k < 0 && t == m->embedding && t == m->head ? tti_shards_find(s, "lm_head.weight", file) : k;
}
/* A pair that config.json ties but the files hold twice, with other values: then it is not tied, as in transformers. */
static void tti_shards_untie(const tti_shards *s, tt_model_config *c) {
    tt_safetensors *a = NULL, *b = NULL;
    int i = tti_shards_find(s, c->gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", &a), k = tti_shards_find(s, "lm_head.weight", &b);
    const tti_entry *x = i < 0 ? NULL : &a->entries[i], *y = k < 0 ? NULL : &b->entries[k];
    if (!x || !y || !c->tie_word_embeddings) { return; }
    c->tie_word_embeddings = strcmp(x->type, y->type) == 0 && x->size == y->size && memcmp(a->bytes + x->begin, b->bytes + y->begin, x->end - x->begin) == 0;
}
static int tti_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}
/* Each tensor of the files must be a parameter, or a buffer that old files carry along. */
static tt_status tti_shards_no_extra(const tti_shards *s, const tt_model *m) {
    size_t i, k;
    for (i = 0; i < s->n; i++) {
        for (k = 0; k < s->files[i]->n; k++) {
            const char *name = s->files[i]->entries[k].name;
            char longer[256];
            tt_safetensors *file = NULL;
            tt_tensor *t;
            if (tti_ends_with(name, ".attn.bias") || tti_ends_with(name, ".attn.masked_bias") || tti_ends_with(name, "rotary_emb.inv_freq")) { continue; }
            t = tt_model_param_find(m, name);
            snprintf(longer, sizeof longer, "transformer.%s", name);
            if (!t && m->config.gpt2) { t = tt_model_param_find(m, longer); }
            if (t && tti_shards_find(s, t->name, &file) == (int)k && file == s->files[i]) { continue; }
            if (t) { return tt_fail(s->ctx, TT_ERR_FILE, "%s: tensor %s is stored twice, also in %s", s->files[i]->path, name, file->path); }
            if (m->config.tie_word_embeddings && strcmp(name, "lm_head.weight") == 0) { continue; }
            return tt_fail(s->ctx, TT_ERR_FILE, "%s: tensor %s is no parameter of a %s model", s->files[i]->path, name, m->config.model_type);
        }
    }
    return TT_OK;
}
/* What of a file can serve as it is: float32, and half precision where the model multiplies by it (the head: only bf16,
 * and only where the backend reads it). */
static int tti_param_as_stored(const tt_model *m, const tt_tensor *t, tt_dtype dtype) {
    int is_half = dtype == TT_BF16 || dtype == TT_F16;
    if (dtype == TT_F32) { return 1; }
    if (t == m->embedding || t == m->head) { return dtype == TT_BF16 && m->ctx->backend->takes_half; }
    return is_half && t->ndim == 2 && t != m->positions;
}
/* The shapes of all, before there is memory for any: a config may promise far more than its files hold. */
static tt_status tti_model_check(tt_model *m, const tti_shards *s, const char *dir) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < m->n_params && status == TT_OK; i++) {
        tt_tensor *t = m->params[i];
        tt_safetensors *file = NULL;
        int k = tti_shards_find_param(s, m, t, &file);
        if (k < 0) { return tt_fail(m->ctx, TT_ERR_FILE, "%s: tensor %s is missing%s", dir, t->name, t == m->head ? " (tie_word_embeddings is false)" : ""); }
        status = tti_shape_check(m->ctx, file->path, file->entries[k].name, &file->entries[k], t, "config wants");
    }
    return status == TT_OK ? tti_shards_no_extra(s, m) : status;
}
/* The data of a parameter: a place in the mapped file, or memory of its own. */
static tt_status tti_param_read(tt_model *m, tt_tensor *t, const tti_shards *s) {
    tt_safetensors *file = NULL;
    int k = tti_shards_find_param(s, m, t, &file);
    const unsigned char *bytes = file->bytes + file->entries[k].begin;
    tt_dtype dtype = tti_entry_dtype(&file->entries[k]);
    if (m->mapped) {
        t->requires_grad = 0;
        if (tti_param_as_stored(m, t, dtype)) { t->dtype = dtype; }
        if (t->dtype == dtype && m->ctx->backend == tt_cpu_backend() && (uintptr_t)bytes % tti_dtype_bytes(dtype) == 0) {
            t->data = (void *)(uintptr_t)bytes;
            t->lent = 1;
            return TT_OK;
        }
    }
    return tti_tensor_fill(file, k, t);
}
static tt_status tti_model_fill(tt_model *m, const tti_shards *s, const char *dir) {
    tt_status status = tti_model_check(m, s, dir);
    int i;
    for (i = 0; i < m->n_params && status == TT_OK; i++) { status = tti_param_read(m, m->params[i], s); }
    return status;
}
/* Reads generation_config.json if there is one. */
static tt_status tti_model_generation(tt_model *m, const char *dir) {
    tt_text path = TT_INIT, text = TT_INIT;
    tt_status status;
    path.ctx = text.ctx = m->ctx;
    status = tti_path_join(&path, dir, "generation_config.json");
    if (status == TT_OK && tt_file_exists(path.data)) {
        status = tt_file_read(m->ctx, path.data, &text);
        if (status == TT_OK) { status = tti_generation_parse(m->ctx, path.data, text.data, text.size, &m->generation); }
    }
    tt_text_free(&path);
    tt_text_free(&text);
    return status;
}
/* The text or, of a list, the one named "default". */
static const tt_json *tti_chat_template_of(const tt_json *config) {
    const tt_json *node = tt_json_get(config, "chat_template"), *item;
    for (item = node && node->type == TT_JSON_ARRAY ? node->child : NULL; item; item = item->next) {
        if (strcmp(tt_json_text(item, "name", ""), "default") == 0) { node = tt_json_get(item, "template"); break; }
    }
    return node && node->type == TT_JSON_STRING ? node : NULL;
}
static tt_status tti_model_keep_template(tt_model *m, const char *text, size_t size, const char *path) {
    if (memchr(text, 0, size)) { return tt_fail(m->ctx, TT_ERR_FILE, "%s: the chat template holds a byte 0", path); }
    m->chat_template = tti_strdup(m->ctx, text);
    return m->chat_template ? TT_OK : TT_ERR_MEM;
}
/* chat_template.jinja if there is one, or else chat_template of tokenizer_config.json. */
static tt_status tti_model_chat_template(tt_model *m, const char *dir) {
    static const char *const names[] = {"chat_template.jinja", "tokenizer_config.json"};
    tt_text path = TT_INIT, text = TT_INIT;
    tt_json *root = NULL;
    const tt_json *node;
    tt_status status = TT_OK;
    int i;
    path.ctx = text.ctx = m->ctx;
    for (i = 0; i < 2 && status == TT_OK && text.size == 0; i++) {
        status = tti_path_join(&path, dir, names[i]);
        if (status == TT_OK && tt_file_exists(path.data)) { status = tt_file_read(m->ctx, path.data, &text); }
    }
    if (status == TT_OK && text.size > 0 && i == 1) { status = tti_model_keep_template(m, text.data, text.size, path.data); }
    if (status == TT_OK && text.size > 0 && i == 2) {
        root = tt_json_parse(m->ctx, text.data, text.size);
        node = tti_chat_template_of(root);
        if (!root) { status = tti_file_fail(m->ctx, path.data, ""); }
        else if (node) { status = tti_model_keep_template(m, node->string, node->length, path.data); }
    }
    tt_json_free(m->ctx, root);
    tt_text_free(&path);
    tt_text_free(&text);
    return status;
}
TT_API const char *tt_model_chat_format(const tt_model *m) {
    return m->chat_template ? tt_chat_recognize(m->ctx, m->chat_template, strlen(m->chat_template)) : "";
}
static tt_model *tti_model_open(tt_context *ctx, const char *dir, int map) {
    tti_shards *shards = (tti_shards *)tt_alloc(ctx, 1, sizeof *shards);
    tt_text path = TT_INIT, text = TT_INIT;
    tt_model_config config;
    tt_model *m = NULL;
    tt_status status;
    if (!shards) { return NULL; }
    shards->ctx = path.ctx = text.ctx = ctx;
    status = tti_path_join(&path, dir, "config.json");
    if (status == TT_OK) { status = tt_file_read(ctx, path.data, &text); }
    if (status == TT_OK) { status = tti_config_parse(ctx, path.data, text.data, text.size, &config); }
    if (status == TT_OK) { status = tti_shards_open(shards, dir); }
    if (status == TT_OK) { tti_shards_untie(shards, &config); }
    if (status == TT_OK) { m = tti_model_new(ctx, &config, NULL, map ? shards : NULL); }
    if (m && (tti_model_fill(m, shards, dir) != TT_OK || tti_model_generation(m, dir) != TT_OK || tti_model_chat_template(m, dir) != TT_OK)) { tt_model_destroy(m); m = NULL; }
    if (status != TT_OK || !map) { tti_shards_destroy(shards); }       /* else the model has or had them */
    tt_text_free(&path);
    tt_text_free(&text);
    return m;
}
TT_API tt_model *tt_model_load(tt_context *ctx, const char *dir) { return (tt_model *)tti_made(ctx, "tt_model_load", tti_model_open(ctx, dir, 0)); }
TT_API tt_model *tt_model_map(tt_context *ctx, const char *dir) { return (tt_model *)tti_made(ctx, "tt_model_map", tti_model_open(ctx, dir, 1)); }

static tt_status tti_save_text(tt_context *ctx, tt_text *path, const char *dir, const char *name, const tt_text *text) {
    tt_status status = tti_path_join(path, dir, name);
    return status == TT_OK ? tt_file_write(ctx, path->data, text->data, text->size) : status;
}
/* How many of list[0..n) go into one file. */
static int tti_shard_length(const tt_named *list, int n, const tt_save_desc *d) {
    size_t bytes = 0;
    int i;
    for (i = 0; i < n; i++) {
        bytes += list[i].tensor->size * tti_dtype_bytes(d->dtype);
        if (i > 0 && d->max_shard_bytes > 0 && bytes > d->max_shard_bytes) { break; }
    }
    return i;
}
/* Adds the tensors of one shard to the index. */
static tt_status tti_index_add(tt_text *index, const tt_named *list, int n, const char *file) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tt_text_append(index, "    ", 4);
        if (status == TT_OK) { status = tt_text_json(index, list[i].name, strlen(list[i].name)); }
        if (status == TT_OK) { status = tt_text_format(index, ": \"%s\",\n", file); }
    }
    return status;
}
static tt_status tti_save_shards(tt_context *ctx, const char *dir, const tt_named *list, int n, const tt_save_desc *d, tt_text *path) {
    tt_text index = TT_INIT;
    char name[64];
    int at, count = 0, number = 0, length;
    size_t bytes = 0;
    tt_status status;
    index.ctx = ctx;
    for (at = 0; at < n; at++) { bytes += list[at].tensor->size * tti_dtype_bytes(d->dtype); }
    for (at = 0; at < n; at += tti_shard_length(list + at, n - at, d)) { count++; }
    status = tt_text_format(&index, "{\n  \"metadata\": {\"total_size\": %.0f},\n  \"weight_map\": {\n", (double)bytes);
    for (at = 0; at < n && status == TT_OK; at += length) {
        length = tti_shard_length(list + at, n - at, d);
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", ++number, count);
        status = tti_path_join(path, dir, name);
        if (status == TT_OK) { status = tti_safetensors_write(ctx, path->data, list + at, length, d->dtype, NULL, 0); }
        if (status == TT_OK) { status = tti_index_add(&index, list + at, length, name); }
    }
    if (status == TT_OK) {
        index.size -= 2;                       /* the last comma */
        status = tt_text_format(&index, "\n  }\n}\n");
    }
    if (status == TT_OK) { status = tti_save_text(ctx, path, dir, "model.safetensors.index.json", &index); }
    if (status == TT_OK) { status = tti_path_join(path, dir, "model.safetensors"); }
    if (status == TT_OK) { remove(path->data); }            /* an older single file would count */
    tt_text_free(&index);
    return status;
}
/* params[from .. to), named with a prefix; NULL if memory is out. */
static tt_named *tti_named_params(const tt_model *m, int from, int to, const char *prefix, tt_text *names) {
    tt_named *list = (tt_named *)tt_alloc(m->ctx, (size_t)(to - from), sizeof *list);
    size_t at = 0;
    int i;
    for (i = from; list && i < to; i++) {
        if (tt_text_format(names, "%s%s", prefix, m->params[i]->name) == TT_OK && tt_text_append(names, "", 1) == TT_OK) { continue; }
        tt_free(m->ctx, list, (size_t)(to - from), sizeof *list);
        return NULL;
    }
    for (i = from; list && i < to; i++) {      /* the text stands still now */
        list[i - from].name = names->data + at;
        list[i - from].tensor = m->params[i];
        at += strlen(names->data + at) + 1;
    }
    return list;
}
static tt_status tti_save_weights(tt_context *ctx, const char *dir, const tt_named *list, int n, const tt_save_desc *d, tt_text *path) {
    tt_status status;
    if (tti_shard_length(list, n, d) < n) { return tti_save_shards(ctx, dir, list, n, d, path); }
    status = tti_path_join(path, dir, "model.safetensors");
    return status == TT_OK ? tti_safetensors_write(ctx, path->data, list, n, d->dtype, NULL, 0) : status;
}
/* "eos_token": "<end>", if the id is one of the tokenizer's special tokens. */
static tt_status tti_save_token(const tt_tokenizer *t, const char *key, int32_t id, tt_text *out) {
    tt_status status;
    if (id < 0 || id >= tt_vocab_size(t) || !tt_token_is_special(t, id)) { return TT_OK; }
    status = tt_text_format(out, "  \"%s\": ", key);
    if (status == TT_OK) { status = tt_text_json(out, tti_token_bytes(t, &t->tokens[id]), t->tokens[id].size); }
    return status == TT_OK ? tt_text_append(out, ",\n", 2) : status;
}
static tt_status tti_save_tokenizer(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir, tt_text *path) {
    tt_context *ctx = m->ctx;
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = ctx;
    status = tt_tokenizer_json(tokenizer, &text);
    if (status == TT_OK) { status = tti_save_text(ctx, path, dir, "tokenizer.json", &text); }
    text.size = 0;
    if (status == TT_OK) { status = tt_text_format(&text, "{\n"); }
    if (status == TT_OK) { status = tti_save_token(tokenizer, "bos_token", m->config.bos_token_id, &text); }
    if (status == TT_OK) { status = tti_save_token(tokenizer, "eos_token", m->config.eos_token_id, &text); }
    if (status == TT_OK && m->chat_template) {
        status = tt_text_format(&text, "  \"chat_template\": ");
        if (status == TT_OK) { status = tt_text_json(&text, m->chat_template, strlen(m->chat_template)); }
        if (status == TT_OK) { status = tt_text_format(&text, ",\n"); }
    }
    if (status == TT_OK) {
        status = tt_text_format(&text, "  \"clean_up_tokenization_spaces\": false,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"model_max_length\": %d\n}\n", m->config.max_position_embeddings);
    }
    if (status == TT_OK) { status = tti_save_text(ctx, path, dir, "tokenizer_config.json", &text); }
    tt_text_free(&text);
    return status;
}
static tt_status tti_model_save_as(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir, const tt_save_desc *desc) {
    tt_context *ctx = m->ctx;
    tt_text path = TT_INIT, text = TT_INIT, generation = TT_INIT, names = TT_INIT;
    tt_named *list;
    uint64_t sum;
    tt_status status;
    if (m->lora.rank) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_save: the model has adapters: merge them first, or save them with tt_model_lora_save"); }
    if (desc->dtype != TT_F32 && desc->dtype != TT_BF16 && desc->dtype != TT_F16) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_save_as: dtype is %d, expected TT_F32, TT_BF16 or TT_F16", (int)desc->dtype); }
    path.ctx = text.ctx = generation.ctx = names.ctx = ctx;
    list = tti_named_params(m, 0, m->n_params, "", &names);
    status = list ? tti_config_json(&m->config, desc->dtype, &text) : TT_ERR_MEM;
    if (status == TT_OK) { status = tti_generation_json(m, &generation); }
    if (status == TT_OK) { status = tti_named_scan(ctx, dir, list, m->n_params, desc->dtype, &sum); }
    if (status == TT_OK) { status = tt_make_dirs(ctx, dir); }
    if (status == TT_OK) { status = tti_save_weights(ctx, dir, list, m->n_params, desc, &path); }
    if (status == TT_OK && tokenizer) { status = tti_save_tokenizer(m, tokenizer, dir, &path); }
    if (status == TT_OK) { status = tti_save_text(ctx, &path, dir, "generation_config.json", &generation); }
    if (status == TT_OK) { status = tti_save_text(ctx, &path, dir, "config.json", &text); }      /* last: without it there is no model */
    tt_free(ctx, list, (size_t)m->n_params, sizeof *list);
    tt_text_free(&path);
    tt_text_free(&text);
    tt_text_free(&generation);
    tt_text_free(&names);
    return status;
}
TT_API tt_status tt_model_save_as(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir, const tt_save_desc *desc) {
    return tti_tried(m->ctx, "tt_model_save_as", tti_model_save_as(m, tokenizer, dir, desc));
}
TT_API tt_status tt_model_save(const tt_model *m, const tt_tokenizer *tokenizer, const char *dir) {
    static const tt_save_desc desc = TT_INIT;
    return tt_model_save_as(m, tokenizer, dir, &desc);
}

/* ---- adapters: the directory of Hugging Face's peft ---- */
#define TTI_PEFT_PREFIX "base_model.model."

/* "q_proj" of "model.layers.0.self_attn.q_proj.lora_A.weight"; its length in n. */
static const char *tti_lora_module(const char *name, size_t *n) {
    const char *end = name + strlen(name) - strlen(".lora_A.weight"), *begin = end;
    while (begin > name && begin[-1] != '.') { begin--; }
    *n = (size_t)(end - begin);
    return begin;
}
/* The targets as they were given, or the last names of all modules that have an adapter. */
static tt_status tti_lora_json_targets(const tt_model *m, tt_text *out) {
    tt_status status = TT_OK;
    int i, k, listed = 0;
    for (i = 0; i < m->lora.n_target_modules && status == TT_OK; i++) {
        status = tt_text_append(out, ", ", listed++ ? 2 : 0);
        if (status == TT_OK) { status = tt_text_json(out, m->lora_targets[i], strlen(m->lora_targets[i])); }
    }
    for (i = m->n_base; i < m->n_params && m->lora.n_target_modules == 0 && status == TT_OK; i += 2) {
        size_t n, n2;
        const char *module = tti_lora_module(m->params[i]->name, &n);
        for (k = m->n_base; k < i; k += 2) {
            const char *earlier = tti_lora_module(m->params[k]->name, &n2);
            if (n == n2 && memcmp(module, earlier, n) == 0) { break; }
        }
        if (k < i) { continue; }
        status = tt_text_append(out, ", ", listed++ ? 2 : 0);
        if (status == TT_OK) { status = tt_text_json(out, module, n); }
    }
    return status;
}
static tt_status tti_lora_json(const tt_model *m, tt_text *out) {
    tt_status status = tt_text_format(out, "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  \"r\": %d,\n  ", m->lora.rank);
    if (status == TT_OK) { status = tti_config_float(out, "lora_alpha", m->lora.alpha, ",\n"); }
    if (status == TT_OK) {
        status = tt_text_format(out, "  \"use_rslora\": %s,\n  \"lora_dropout\": 0.0,\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": %s,\n  \"inference_mode\": true,\n"
                                "  \"base_model_name_or_path\": null,\n  \"target_modules\": [", tti_bool(m->lora.use_rslora), tti_bool(m->config.gpt2));
    }
    if (status == TT_OK) { status = tti_lora_json_targets(m, out); }
    return status == TT_OK ? tt_text_format(out, "]\n}\n") : status;
}
static tt_status tti_model_lora_save(const tt_model *m, const char *dir) {
    tt_context *ctx = m->ctx;
    tt_text path = TT_INIT, text = TT_INIT, names = TT_INIT;
    tt_named *list;
    uint64_t sum;
    int n = m->n_params - m->n_base;
    tt_status status;
    if (!m->lora.rank) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_save: the model has no adapters"); }
    path.ctx = text.ctx = names.ctx = ctx;
    list = tti_named_params(m, m->n_base, m->n_params, TTI_PEFT_PREFIX, &names);
    status = list ? tti_lora_json(m, &text) : TT_ERR_MEM;
    if (status == TT_OK) { status = tti_named_scan(ctx, dir, list, n, TT_F32, &sum); }
    if (status == TT_OK) { status = tt_make_dirs(ctx, dir); }
    if (status == TT_OK) { status = tti_path_join(&path, dir, "adapter_model.safetensors"); }
    if (status == TT_OK) { status = tti_safetensors_write(ctx, path.data, list, n, TT_F32, NULL, 0); }
    if (status == TT_OK) { status = tti_save_text(ctx, &path, dir, "adapter_config.json", &text); }      /* last, as config.json */
    tt_free(ctx, list, (size_t)n, sizeof *list);
    tt_text_free(&path);
    tt_text_free(&text);
    tt_text_free(&names);
    return status;
}
TT_API tt_status tt_model_lora_save(const tt_model *m, const char *dir) {
    return tti_tried(m->ctx, "tt_model_lora_save", tti_model_lora_save(m, dir));
}
/* What would make the adapter compute something else than scale (x A^T) B^T on whole matrices: empty, false or null. */
static void tti_lora_only_plain(tti_config_reader *r) {
    static const char *const keys[] = {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
                                       "layers_pattern", "exclude_modules", "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens"};
    size_t i;
    for (i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const tt_json *node = tti_field(r, keys[i]);
        int empty = !node || (node->type == TT_JSON_BOOL && node->number == 0) || ((node->type == TT_JSON_ARRAY || node->type == TT_JSON_OBJECT) && node->length == 0);
        if (!empty) { tti_field_fail(r, keys[i], node, "null, false or empty"); }
    }
}
/* desc->target_modules points into `targets`, which the caller frees, and into the JSON. */
static tt_status tti_lora_parse(tti_config_reader *r, tt_lora_desc *d, const char ***targets) {
    const tt_json *list = tti_field(r, "target_modules"), *node;
    int n = 0;
    d->rank = 8;
    d->alpha = 8;
    tti_field_is(r, "peft_type", "LORA", NULL);
    tti_field_is(r, "bias", "none", NULL);
    tti_field_int(r, "r", &d->rank);
    tti_field_float(r, "lora_alpha", &d->alpha);
    tti_field_bool(r, "use_rslora", &d->use_rslora);
    tti_lora_only_plain(r);
    if (r->status == TT_OK && d->rank < 1) { tti_field_fail(r, "r", tti_field(r, "r"), "a rank >= 1"); }
    if (r->status != TT_OK || (list && list->type == TT_JSON_STRING && strcmp(list->string, "all-linear") == 0)) { return r->status; }
    if (!list) { return r->status = tt_fail(r->ctx, TT_ERR_FILE, "%s: target_modules is missing", r->file); }
    if (list->type != TT_JSON_ARRAY || list->length < 1 || list->length > 65536) { tti_field_fail(r, "target_modules", list, "a list of names or \"all-linear\""); return r->status; }
    *targets = (const char **)tt_alloc(r->ctx, list->length, sizeof **targets);
    if (!*targets) { return TT_ERR_MEM; }
    for (node = list->child; node; node = node->next) {
        if (node->type != TT_JSON_STRING) { tti_field_fail(r, "target_modules", node, "a list of names"); return r->status; }
        (*targets)[n++] = node->string;
    }
    d->target_modules = *targets;
    d->n_target_modules = n;
    return TT_OK;
}
/* Adds adapters as adapter_config.json says, still without data; the base is not frozen yet. */
static tt_status tti_lora_configure(tt_model *m, const char *file, const char *text, size_t size) {
    tti_config_reader r = TT_INIT;
    tt_lora_desc d = TT_INIT;
    const char **targets = NULL;
    tt_json *root = tt_json_parse(m->ctx, text, size);
    const tt_json *list;
    tt_status status;
    r.ctx = m->ctx;
    r.file = file;
    r.root = root;
    if (!root) { return tti_file_fail(m->ctx, file, ""); }
    list = tt_json_get(root, "target_modules");
    status = tti_lora_parse(&r, &d, &targets);
    if (status == TT_OK && tti_lora_build(m, &d, 1) != TT_OK) { status = tti_file_fail(m->ctx, file, ""); }
    tt_free(m->ctx, targets, targets ? list->length : 0, sizeof *targets);
    tt_json_free(m->ctx, root);
    return status;
}
static tt_status tti_lora_fill(tt_model *m, tt_safetensors *file) {
    tt_text names = TT_INIT;
    int n = m->n_params - m->n_base, i;
    tt_named *list;
    tt_status status;
    names.ctx = m->ctx;
    list = tti_named_params(m, m->n_base, m->n_params, TTI_PEFT_PREFIX, &names);
    status = list ? TT_OK : TT_ERR_MEM;
    for (i = 0; i < n && status == TT_OK; i++) {
        int k = tt_safetensors_find(file, list[i].name);
        if (k < 0) { status = tt_fail(m->ctx, TT_ERR_FILE, "%s: tensor %s is missing", file->path, list[i].name); break; }
        status = tti_shape_check(m->ctx, file->path, list[i].name, &file->entries[k], list[i].tensor, "adapter_config.json wants");
    }
    for (i = 0; i < (int)file->n && status == TT_OK && (int)file->n != n; i++) {       /* all are there: find the one too many */
        if (strncmp(file->entries[i].name, TTI_PEFT_PREFIX, strlen(TTI_PEFT_PREFIX)) == 0 && tt_model_param_find(m, file->entries[i].name + strlen(TTI_PEFT_PREFIX))) { continue; }
        status = tt_fail(m->ctx, TT_ERR_FILE, "%s: tensor %s belongs to no adapter of this model", file->path, file->entries[i].name);
    }
    for (i = 0; i < n && status == TT_OK; i++) { status = tti_tensor_fill(file, tt_safetensors_find(file, list[i].name), list[i].tensor); }
    tt_free(m->ctx, list, (size_t)n, sizeof *list);
    tt_text_free(&names);
    return status;
}
static tt_status tti_model_lora_load(tt_model *m, const char *dir) {
    tt_context *ctx = m->ctx;
    tt_text path = TT_INIT, text = TT_INIT;
    tt_safetensors *file = NULL;
    tt_status status;
    int added;
    if (m->lora.rank) { return tt_fail(ctx, TT_ERR_ARG, "tt_model_lora_load: the model has adapters, of rank %d", m->lora.rank); }
    path.ctx = text.ctx = ctx;
    status = tti_path_join(&path, dir, "adapter_config.json");
    if (status == TT_OK) { status = tt_file_read(ctx, path.data, &text); }
    if (status == TT_OK) { status = tti_lora_configure(m, path.data, text.data, text.size); }
    added = status == TT_OK;
    if (status == TT_OK) { status = tti_path_join(&path, dir, "adapter_model.safetensors"); }
    if (status == TT_OK) { file = tt_safetensors_open(ctx, path.data); status = file ? TT_OK : tt_error_status(ctx); }
    if (status == TT_OK) { status = tti_lora_fill(m, file); }
    if (status == TT_OK) { tti_lora_freeze(m); } else if (added) { tti_lora_detach(m); }
    tt_safetensors_close(file);
    tt_text_free(&path);
    tt_text_free(&text);
    return status;
}
TT_API tt_status tt_model_lora_load(tt_model *m, const char *dir) {
    return tti_tried(m->ctx, "tt_model_lora_load", tti_model_lora_load(m, dir));
}

/* ==== 9. generate ===========================================================================
 * A sequence is in a slot of the cache while it grows. What all prompts begin with runs first, once for all slots. Each turn of
 * tt_generate has three parts: empty slots are given to waiting sequences, whose prompts (what is left of
 * them, but for the last token) run through the model as one packed batch, once per prompt; then one token
 * of every sequence runs as a batch; then each row of logits gives a token.
 *
 * Nothing of this order can be seen in the results: a row's arithmetic does not depend on the rows beside
 * it, and the random number of a token is a function of (seed, request id, sample, position). */

/* ---- one row of logits to one token ---- */
/* Scores in a max-heap of token ids: the largest score, and of equals the lowest id, is on top. */
static int tti_heap_before(const float *scores, int32_t a, int32_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); }
static void tti_heap_sink(const float *scores, int32_t *heap, int n, int i) {
    for (;;) {
        int child = 2 * i + 1;
        int32_t moved = heap[i];
        if (child >= n) { return; }
        if (child + 1 < n && tti_heap_before(scores, heap[child + 1], heap[child])) { child++; }
        if (!tti_heap_before(scores, heap[child], moved)) { return; }
        heap[i] = heap[child];
        heap[child] = moved;
        i = child;
    }
}
/* Token ids, of which the `sorted` largest stand at the end, the largest last; before them a heap of the others. */
typedef struct tti_ranking { const float *scores; int32_t *ids; int n, sorted; } tti_ranking;
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
/* A float of few decimals as the number that was written: 1 - 0.8f is more than rounding away from 1 - 0.8. */
static double tti_decimal(float x) {
    double decimal = floor((double)x * 1e7 + 0.5) / 1e7;
    return (float)decimal == x ? decimal : (double)x;
}
/* How many tokens top-k, top-p and min-p leave: the first so many of the ranking. w[id]: e to the power of the score, less
 * the largest. The rules, their order and what they round are those of transformers' warpers: each looks at what the one
 * before has left, renormalised, and compares floats. (Which of equal tokens top-p drops is not defined there.) */
static int tti_candidates(tti_ranking *r, const float *w, const tt_sampling *s) {
    int n = r->n, kept, i;
    double sum = 0, rest = 0;
    float most = (float)(1 - tti_decimal(s->top_p));
    for (i = 0; i < n; i++) { r->ids[i] = (int32_t)i; }
    for (i = n / 2 - 1; i >= 0; i--) { tti_heap_sink(r->scores, r->ids, n, i); }
    if (s->top_k > 0 && s->top_k < n) {              /* and what equals the last of them */
        float least = -HUGE_VALF;
        for (i = 0; i < n && (i < s->top_k || r->scores[r->ids[0]] == least); i++) { least = r->scores[tti_ranked(r, i)]; }
        n = i;
    }
    for (i = 0; i < n; i++) { sum += (double)w[r->ids[r->n - 1 - i]]; }
    kept = n;
    if (s->top_p < 1.0f) {                           /* drops from the end what together has at most 1 - top_p */
        for (i = 0; i < n; i++) { rest += (double)(float)((double)w[r->ids[r->n - 1 - i]] / sum); }
        for (kept = 0; kept < n && (kept == 0 || (float)rest > most); kept++) { rest -= (double)(float)((double)w[tti_ranked(r, kept)] / sum); }
        for (sum = 0, i = 0; i < kept; i++) { sum += (double)w[tti_ranked(r, i)]; }
    }
    if (s->min_p > 0) {
        float least = s->min_p * (float)((double)w[tti_ranked(r, 0)] / sum);
        for (n = kept, kept = 1; kept < n && (float)((double)w[tti_ranked(r, kept)] / sum) >= least; kept++) { }
    }
    return kept;
}
/* Hugging Face's repetition penalty, on each token of the history once. */
static void tti_penalise(float *logits, const float *raw, const int32_t *history, int n, float penalty) {
    int i;
    for (i = 0; i < n; i++) {
        float z = raw[history[i]] > 0 ? raw[history[i]] / penalty : raw[history[i]] * penalty;
        logits[history[i]] = z > FLT_MAX ? FLT_MAX : z < -FLT_MAX ? -FLT_MAX : z;
    }
}
/* w, scores: scratch of vocab floats, ids: scratch of vocab ids; scores may be the logits. u in [0,1). */
static int32_t tti_choose(tt_context *ctx, const float *logits, int vocab, const tt_sampling *s, double u, float *w, float *scores, int32_t *ids) {
    float largest = -FLT_MAX, inv_temperature = 1.0f / s->temperature;
    int32_t best = 0;
    double total = 0, mass = 0;
    tti_ranking ranking;
    int i, kept;
    for (i = 0; i < vocab; i++) { if (logits[i] > largest) { largest = logits[i]; best = (int32_t)i; } }
    if (s->greedy) { return best; }
    for (i = 0; i < vocab; i++) { w[i] = (logits[i] - largest) * inv_temperature; }
    tti_row_exp(ctx, w, vocab);
    if ((s->top_k <= 0 || s->top_k >= vocab) && s->top_p >= 1.0f && s->min_p <= 0) {
        for (i = 0; i < vocab; i++) { total += (double)w[i]; }
        for (i = 0; i < vocab; i++) {
            mass += (double)w[i];
            if (w[i] > 0) { best = (int32_t)i; }
            if (mass > u * total) { break; }
        }
        return best;
    }
    for (i = 0; i < vocab; i++) { scores[i] = logits[i] / s->temperature; }
    ranking.scores = scores;
    ranking.ids = ids;
    ranking.n = vocab;
    ranking.sorted = 0;
    kept = tti_candidates(&ranking, w, s);
    for (i = 0; i < kept; i++) { total += (double)w[tti_ranked(&ranking, i)]; }
    for (i = 0; i < kept; i++) {
        int32_t id = tti_ranked(&ranking, i);
        mass += (double)w[id];
        if (w[id] > 0) { best = id; }
        if (mass > u * total) { break; }
    }
    return best;
}

/* ---- the engine ---- */
typedef struct tti_sequence {       /* what stands in a slot */
    int item;                       /* index in out->items, -1 = empty slot       */
    int length;                     /* prompt and response so far                 */
    int32_t *tokens;                /* [prompt + max_new_tokens]                  */
    float *logprobs;                /* [max_new_tokens]                           */
} tti_sequence;
typedef struct tti_engine {
    tt_context *ctx;
    tt_model *model;
    const tt_request *requests;
    const tt_sampling *s;
    tt_completions *out;
    tt_kv_cache *cache;
    tti_sequence *slots;            /* [n_slots]                     */
    int n_slots, capacity, next;    /* next: first waiting item      */
    int common;                     /* tokens with which all prompts begin: every slot holds them from the start on, to the end */
    int32_t *offsets, *tokens, *slot_ids;   /* of a batch            */
    size_t n_tokens;                /* capacity of tokens            */
    int owns_panels;
    int n_before;                   /* sequences of the step before; 0 = prompts ran since */
} tti_engine;

static tt_status tti_sampling_check(tt_context *ctx, const tt_sampling *in, tt_sampling *s) {
    *s = *in;
    if (s->max_new_tokens == 0) { s->max_new_tokens = 128; }
    if (s->temperature == 0) { s->temperature = 1; }
    if (s->top_p == 0) { s->top_p = 1; }
    if (s->repetition_penalty == 0) { s->repetition_penalty = 1; }
    if (s->max_batch == 0) { s->max_batch = 128; }
    if (s->max_new_tokens < 1) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: max_new_tokens is %d, expected >= 1", s->max_new_tokens); }
    if (!tti_is_temperature(s->temperature)) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: temperature is %g, expected " TTI_TEMPERATURES, (double)s->temperature); }
    if (!(s->top_p > 0 && s->top_p <= 1)) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: top_p is %g, expected in (0, 1]", (double)s->top_p); }
    if (!(s->min_p >= 0 && s->min_p <= 1)) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: min_p is %g, expected in [0, 1]", (double)s->min_p); }
    if (s->top_k < 0) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: top_k is %d, expected >= 0", s->top_k); }
    if (!(s->repetition_penalty > 0) || !isfinite(s->repetition_penalty)) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_generate: repetition_penalty is %g, expected a finite number > 0", (double)s->repetition_penalty);
    }
    if (s->max_batch < 1) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: max_batch is %d, expected >= 1", s->max_batch); }
    return TT_OK;
}
/* With how many tokens all prompts begin, the last of each aside; 0 for so few that to run them apart would not pay. */
#define TTI_COMMON_LEAST 32
static int tti_engine_common(const tti_engine *e, int n_requests) {
    const tt_request *first = e->requests, *q;
    int common = n_requests > 1 ? first->prompt_length - 1 : 0, k;
    for (q = first + 1; q < first + n_requests; q++) {
        if (common > q->prompt_length - 1) { common = q->prompt_length - 1; }
        for (k = 0; k < common && q->prompt[k] == first->prompt[k]; k++) { }
        common = k;
    }
    return common < TTI_COMMON_LEAST ? 0 : common;
}
/* The items in order, and the longest sequence. */
static tt_status tti_engine_items(tti_engine *e, int n_requests) {
    tt_context *ctx = e->ctx;
    int vocab = e->model->config.vocab_size, r, k, total = 0;
    for (r = 0; r < n_requests; r++) {
        const tt_request *q = &e->requests[r];
        int limit = e->model->config.max_position_embeddings, copies = q->n ? q->n : 1;
        if (copies < 1 || total > INT_MAX - copies) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: requests[%d].n is %d, expected >= 0", r, q->n); }
        if (q->prompt_length < 1) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: requests[%d].prompt_length is %d, expected >= 1", r, q->prompt_length); }
        if (q->prompt_length > limit || e->s->max_new_tokens > limit - q->prompt_length) {
            return tt_fail(ctx, TT_ERR_ARG, "tt_generate: requests[%d] has %d prompt tokens and max_new_tokens is %d, together above max_position_embeddings %d",
                           r, q->prompt_length, e->s->max_new_tokens, limit);
        }
        for (k = 0; k < q->prompt_length; k++) {
            if (q->prompt[k] >= 0 && q->prompt[k] < vocab) { continue; }
            return tt_fail(ctx, TT_ERR_ARG, "tt_generate: requests[%d].prompt[%d] is %d, expected 0..%d (vocab_size of the model)", r, k, (int)q->prompt[k], vocab - 1);
        }
        if (q->prompt_length + e->s->max_new_tokens > e->capacity) { e->capacity = q->prompt_length + e->s->max_new_tokens; }
        total += copies;
    }
    e->out->items = (tt_completion *)tt_alloc(ctx, (size_t)total, sizeof *e->out->items);
    if (!e->out->items) { return TT_ERR_MEM; }
    e->out->n = total;
    for (total = 0, r = 0; r < n_requests; r++) {
        for (k = 0; k < (e->requests[r].n ? e->requests[r].n : 1); k++) {
            e->out->items[total].request = r;
            e->out->items[total++].sample = k;
        }
    }
    e->n_slots = total < e->s->max_batch ? total : e->s->max_batch;
    e->common = tti_engine_common(e, n_requests);
    return TT_OK;
}
/* Weights that many products will read, as the kernels like them best; not if that took more memory than the weights. */
#define TTI_PANELS_TURNS 8
#define TTI_PANELS_MOST ((size_t)1 << 31)
static tt_status tti_panels_make(tt_tensor *w, int transposed, size_t *left) {
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
    if (bytes > *left || bytes > tti_tensor_bytes(w) * 5 / 4 + 65536) { return TT_OK; }
    w->panels = ctx->backend->alloc(ctx, bytes);
    if (!w->panels) { return TT_ERR_MEM; }
    ctx->backend->gemm_panels(ctx, &g, w->panels);
    w->panels_bytes = bytes;
    w->panels_transposed = transposed;
    *left -= bytes;
    return TT_OK;
}
static void tti_panels_free(tt_tensor *w) {
    w->ctx->backend->free(w->ctx, w->panels, w->panels_bytes);
    w->panels = NULL;
}
static tt_status tti_engine_panels(tti_engine *e) {
    tt_model *m = e->model;
    size_t left = TTI_PANELS_MOST;
    tt_status status = TT_OK;
    int i, k;
    if (!e->ctx->backend->gemm_panels || e->s->max_new_tokens < TTI_PANELS_TURNS || m->head->panels) { return TT_OK; }
    e->owns_panels = 1;
    for (i = 0; i < m->config.num_hidden_layers; i++) {
        for (k = 0; k < TTI_N_MATRICES && status == TT_OK; k++) {
            tt_tensor *w = m->layers[i].matrix[k].w;
            if (w && w->dtype != TT_F16) { status = tti_panels_make(w, !m->config.gpt2, &left); }
        }
    }
    return status == TT_OK ? tti_panels_make(m->head, 1, &left) : status;
}
static void tti_engine_panels_free(tti_engine *e) {
    int i;
    for (i = 0; e->owns_panels && i < e->model->n_params; i++) { tti_panels_free(e->model->params[i]); }
}
static tt_status tti_engine_open(tti_engine *e) {
    tt_context *ctx = e->ctx;
    int i;
    if (tti_engine_panels(e) != TT_OK) { return TT_ERR_MEM; }
    e->n_tokens = (size_t)e->n_slots * (size_t)e->capacity;
    e->cache = tt_kv_cache_create(e->model, e->n_slots, e->capacity);
    e->slots = e->cache ? (tti_sequence *)tt_alloc(ctx, (size_t)e->n_slots, sizeof *e->slots) : NULL;
    if (!e->slots) { return TT_ERR_MEM; }
    e->offsets = (int32_t *)tt_alloc(ctx, (size_t)e->n_slots + 1, sizeof(int32_t));
    e->slot_ids = (int32_t *)tt_alloc(ctx, (size_t)e->n_slots, sizeof(int32_t));
    e->tokens = (int32_t *)tt_alloc(ctx, e->n_tokens, sizeof(int32_t));
    if (!e->offsets || !e->slot_ids || !e->tokens) { return TT_ERR_MEM; }
    for (i = 0; i < e->n_slots; i++) {
        e->slots[i].item = -1;
        e->slots[i].tokens = (int32_t *)tt_alloc(ctx, (size_t)e->capacity, sizeof(int32_t));
        e->slots[i].logprobs = (float *)tt_alloc(ctx, (size_t)e->s->max_new_tokens, sizeof(float));
        if (!e->slots[i].tokens || !e->slots[i].logprobs) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
static void tti_engine_close(tti_engine *e) {
    tt_context *ctx = e->ctx;
    int i;
    for (i = 0; e->slots && i < e->n_slots; i++) {
        tt_free(ctx, e->slots[i].tokens, (size_t)e->capacity, sizeof(int32_t));
        tt_free(ctx, e->slots[i].logprobs, (size_t)e->s->max_new_tokens, sizeof(float));
    }
    tt_free(ctx, e->slots, (size_t)e->n_slots, sizeof *e->slots);
    tt_free(ctx, e->offsets, (size_t)e->n_slots + 1, sizeof(int32_t));
    tt_free(ctx, e->slot_ids, (size_t)e->n_slots, sizeof(int32_t));
    tt_free(ctx, e->tokens, e->n_tokens, sizeof(int32_t));
    tt_kv_cache_destroy(e->cache);
    tti_engine_panels_free(e);
}
/* Runs a packed batch of n sequences (offsets, tokens, slot_ids) through the model. */
static tt_tensor *tti_engine_forward(tti_engine *e, int n) {
    tt_batch_desc desc = TT_INIT;
    desc.n_sequences = n;
    desc.offsets = e->offsets;
    desc.tokens = e->tokens;
    desc.cache = e->cache;
    desc.cache_slots = e->slot_ids;
    return tt_model_forward(e->model, tt_batch_create(e->ctx, &desc));
}
/* Another slot that holds the request, with at least `cached` positions in the cache; -1 if none. */
static int tti_engine_donor(const tti_engine *e, int request, int but, int cached) {
    int i;
    for (i = 0; i < e->n_slots; i++) {
        if (i != but && e->slots[i].item >= 0 && e->out->items[e->slots[i].item].request == request && e->cache->lengths[i] >= cached) { return i; }
    }
    return -1;
}
/* The tokens with which all prompts begin, such as a teacher's worked examples, run once for all slots. */
static tt_status tti_engine_prefix(tti_engine *e) {
    tt_status status = TT_OK;
    int i;
    if (e->common == 0) { return TT_OK; }
    e->offsets[1] = e->common;
    e->slot_ids[0] = 0;
    memcpy(e->tokens, e->requests[0].prompt, (size_t)e->common * sizeof(int32_t));
    if (!tti_engine_forward(e, 1)) { return tt_error_status(e->ctx); }
    for (i = 1; i < e->n_slots && status == TT_OK; i++) { status = tt_kv_cache_share(e->cache, 0, i, e->common); }
    return status;
}
/* Gives empty slots to waiting sequences. The first of a request runs its prompt, the others copy it. */
static tt_status tti_engine_fill(tti_engine *e) {
    int i, n = 0, first = e->next;
    for (i = 0; i < e->n_slots && e->next < e->out->n; i++) {
        tti_sequence *q = &e->slots[i];
        const tt_request *r;
        int donor, left;
        if (q->item >= 0) { continue; }
        r = &e->requests[e->out->items[e->next].request];
        donor = tti_engine_donor(e, e->out->items[e->next].request, i, 0);
        q->item = e->next++;
        q->length = r->prompt_length;
        memcpy(q->tokens, r->prompt, (size_t)r->prompt_length * sizeof(int32_t));
        tt_kv_cache_truncate(e->cache, i, e->common);
        left = r->prompt_length - 1 - e->common;
        if (donor >= 0 || left == 0) { continue; }
        e->offsets[n + 1] = e->offsets[n] + (int32_t)left;
        memcpy(e->tokens + e->offsets[n], r->prompt + e->common, (size_t)left * sizeof(int32_t));
        e->slot_ids[n++] = i;
    }
    if (n > 0 && !tti_engine_forward(e, n)) { return tt_error_status(e->ctx); }
    if (n > 0) { e->n_before = 0; }
    for (i = 0; i < e->n_slots; i++) {
        tti_sequence *q = &e->slots[i];
        if (q->item < first || tt_kv_cache_length(e->cache, i) == q->length - 1) { continue; }
        n = tti_engine_donor(e, e->out->items[q->item].request, i, q->length - 1);
        if (tt_kv_cache_share(e->cache, n, i, q->length - 1) != TT_OK) { return tt_error_status(e->ctx); }
    }
    return TT_OK;
}
/* Finishes the sequence in the slot: its tokens move to the completion. */
static tt_status tti_engine_finish(tti_engine *e, tti_sequence *q, int stopped) {
    tt_completion *c = &e->out->items[q->item];
    int prompt = e->requests[c->request].prompt_length, n = q->length - prompt;
    c->tokens = (int32_t *)tt_alloc(e->ctx, (size_t)n, sizeof(int32_t));
    c->logprobs = (float *)tt_alloc(e->ctx, (size_t)n, sizeof(float));
    c->length = n;
    if (!c->tokens || !c->logprobs) { return TT_ERR_MEM; }
    c->stopped = stopped;
    memcpy(c->tokens, q->tokens + prompt, (size_t)n * sizeof(int32_t));
    memcpy(c->logprobs, q->logprobs, (size_t)n * sizeof(float));
    e->out->n_tokens += (size_t)n;
    q->item = -1;
    return TT_OK;
}
/* The sequence's next random number. */
static double tti_engine_draw(const tti_engine *e, const tti_sequence *q) {
    const tt_completion *c = &e->out->items[q->item];
    uint64_t name[2];
    name[0] = e->requests[c->request].id;
    name[1] = (uint64_t)c->sample;
    return tti_unit(tt_random(e->s->seed, tt_hash(name, sizeof name, 0), (uint64_t)q->length));
}
/* The token and log-prob of one row of logits; uses only its own scratch, so rows can run in parallel. */
static void tti_engine_sample(const tti_engine *e, tti_sequence *q, const float *logits, float *scratch, int32_t *ids) {
    const tt_completion *c = &e->out->items[q->item];
    const tt_request *r = &e->requests[c->request];
    int vocab = e->model->config.vocab_size;
    const float *row = logits;
    double u = tti_engine_draw(e, q);
    if (e->s->repetition_penalty != 1.0f) {
        memcpy(scratch + vocab, logits, (size_t)vocab * sizeof(float));
        tti_penalise(scratch + vocab, logits, q->tokens, q->length, e->s->repetition_penalty);
        row = scratch + vocab;
    }
    q->tokens[q->length] = tti_choose(e->ctx, row, vocab, e->s, u, scratch, scratch + vocab, ids);
    tti_row_logprob(e->ctx, logits, vocab, q->tokens[q->length], 1.0f / e->s->temperature, &q->logprobs[q->length - r->prompt_length], NULL);
    q->length++;
}
/* Draws of TTI_DRAWS sequences are one part of parallel work; each thread has scratch memory of its own. */
#define TTI_DRAWS 4
typedef struct tti_draws { tti_engine *e; int n; size_t vocab; const float *rows; float *scratch; int32_t *ids; } tti_draws;
static void tti_engine_sample_part(void *user, int part, int worker) {
    const tti_draws *d = (const tti_draws *)user;
    size_t mine = (size_t)worker * d->vocab;
    int i, end = (part + 1) * TTI_DRAWS < d->n ? (part + 1) * TTI_DRAWS : d->n;
    for (i = part * TTI_DRAWS; i < end; i++) {
        tti_engine_sample(d->e, &d->e->slots[d->e->slot_ids[i]], d->rows + (size_t)i * d->vocab, d->scratch + 2 * mine, d->ids + mine);
    }
}
/* All rows on the backend, where it can: n tokens and log-probs come down instead of n x vocab logits. */
static int tti_engine_samples_there(const tti_engine *e) {
    const tt_sampling *s = e->s;
    return e->ctx->backend->sample && s->top_k <= 0 && s->top_p >= 1.0f && s->min_p <= 0 && s->repetition_penalty == 1.0f;
}
/* drawn: on the backend, n tokens and behind them n log-probs. */
static tt_status tti_engine_sample_there(tti_engine *e, const tt_tensor *logits, int n, int32_t **drawn) {
    tt_context *ctx = e->ctx;
    size_t count = (size_t)n;
    double *u = (double *)tti_arena_alloc(ctx, &ctx->host, count * sizeof(double));
    double *there_u = (double *)tti_arena_alloc(ctx, &ctx->device, count * sizeof(double));
    tt_sample_args a = TT_INIT;
    tt_status status;
    int i;
    *drawn = (int32_t *)tti_arena_alloc(ctx, &ctx->device, count * (sizeof(int32_t) + sizeof(float)));
    if (!u || !there_u || !*drawn) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) { u[i] = tti_engine_draw(e, &e->slots[e->slot_ids[i]]); }
    a.n = n;
    a.vocab = e->model->config.vocab_size;
    a.greedy = e->s->greedy;
    a.inv_temperature = 1.0f / e->s->temperature;
    a.logits = TT_F(logits);
    a.u = there_u;
    a.tokens = *drawn;
    a.logprobs = (float *)(*drawn + n);
    status = ctx->backend->upload(ctx, there_u, u, count * sizeof(double));
    return status == TT_OK ? ctx->backend->sample(ctx, &a) : status;
}
static tt_status tti_engine_collect(tti_engine *e, const int32_t *drawn, int n) {
    tt_context *ctx = e->ctx;
    size_t bytes = (size_t)n * (sizeof(int32_t) + sizeof(float));
    int32_t *tokens = (int32_t *)tti_arena_alloc(ctx, &ctx->host, bytes);
    tt_status status = tokens ? ctx->backend->download(ctx, tokens, drawn, bytes) : TT_ERR_MEM;
    int i;
    for (i = 0; status == TT_OK && i < n; i++) {
        tti_sequence *q = &e->slots[e->slot_ids[i]];
        q->tokens[q->length] = tokens[i];
        memcpy(&q->logprobs[q->length - e->requests[e->out->items[q->item].request].prompt_length], tokens + n + i, sizeof(float));
        q->length++;
    }
    return status;
}
/* All rows here, on this machine's threads. */
static tt_status tti_engine_sample_here(tti_engine *e, const tt_tensor *logits, int n) {
    tt_context *ctx = e->ctx;
    int vocab = e->model->config.vocab_size;
    float *rows = TT_F(logits);
    tti_draws draw;
    if (ctx->backend != tt_cpu_backend()) {
        rows = (float *)tti_arena_alloc(ctx, &ctx->host, logits->size * sizeof(float));
        if (!rows || tt_tensor_get(logits, rows) != TT_OK) { return tt_error_status(ctx); }
    }
    draw.rows = rows;
    draw.scratch = (float *)tti_arena_alloc(ctx, &ctx->host, (size_t)ctx->n_threads * (size_t)vocab * 2 * sizeof(float));
    draw.ids = (int32_t *)tti_arena_alloc(ctx, &ctx->host, (size_t)ctx->n_threads * (size_t)vocab * sizeof(int32_t));
    if (!draw.scratch || !draw.ids) { return TT_ERR_MEM; }
    draw.e = e;
    draw.n = n;
    draw.vocab = (size_t)vocab;
    return tti_parallel(ctx, tti_engine_sample_part, &draw, (n + TTI_DRAWS - 1) / TTI_DRAWS);
}
/* The last token of n sequences through the model, and where the backend draws, what it draws. */
static tt_status tti_engine_launch(tti_engine *e, int n, tt_tensor **logits, int32_t **drawn) {
    *drawn = NULL;
    *logits = tt_model_logits(e->model, tti_engine_forward(e, n));
    if (!*logits) { return tt_error_status(e->ctx); }
    return tti_engine_samples_there(e) ? tti_engine_sample_there(e, *logits, n, drawn) : TT_OK;
}
/* The same, handed over as one if the step is like the one before, which has then made room for all that it needs. */
static tt_status tti_engine_step(tti_engine *e, int n, tt_tensor **logits, int32_t **drawn) {
    const tt_backend *backend = e->ctx->backend;
    int held = backend->step_begin && n == e->n_before && backend->step_begin(e->ctx), i;
    tt_status status = tti_engine_launch(e, n, logits, drawn);
    e->n_before = n;
    if (!held || backend->step_end(e->ctx) || status != TT_OK) { return status; }
    for (i = 0; i < n; i++) { tt_kv_cache_truncate(e->cache, (int)e->slot_ids[i], tt_kv_cache_length(e->cache, (int)e->slot_ids[i]) - 1); }
    return tti_engine_launch(e, n, logits, drawn);
}
/* One token for every sequence in a slot. */
static tt_status tti_engine_turn(tti_engine *e) {
    tt_context *ctx = e->ctx;
    int n = 0, i, k;
    tt_tensor *logits;
    int32_t *drawn;
    tt_status status;
    for (i = 0; i < e->n_slots; i++) {
        if (e->slots[i].item < 0) { continue; }
        e->tokens[n] = e->slots[i].tokens[e->slots[i].length - 1];
        e->slot_ids[n++] = (int32_t)i;
        e->offsets[n] = (int32_t)n;
    }
    status = tti_engine_step(e, n, &logits, &drawn);
    if (status == TT_OK) { status = drawn ? tti_engine_collect(e, drawn, n) : tti_engine_sample_here(e, logits, n); }
    if (status != TT_OK) { return status; }
    for (i = 0; i < n; i++) {
        tti_sequence *q = &e->slots[e->slot_ids[i]];
        const tt_completion *c = &e->out->items[q->item];
        int prompt = e->requests[c->request].prompt_length, stopped = 0;
        int32_t token = q->tokens[q->length - 1];
        if (!isfinite(q->logprobs[q->length - 1 - prompt])) {
            return tt_fail(ctx, TT_ERR_NUMBER, "tt_generate: the logits of request %d, sample %d, position %d are not finite", c->request, c->sample, q->length - 1);
        }
        if (e->s->on_token && e->s->on_token(e->s->user, c->request, c->sample, token, q->logprobs[q->length - 1 - prompt])) {
            return tt_fail(ctx, TT_ERR_STOP, "tt_generate: stopped by on_token");
        }
        for (k = 0; k < e->s->n_stop_tokens; k++) { stopped |= e->s->stop_tokens[k] == token; }
        if ((stopped || q->length - prompt == e->s->max_new_tokens) && tti_engine_finish(e, q, stopped) != TT_OK) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
static tt_status tti_engine_run(tti_engine *e) {
    tt_context *ctx = e->ctx;
    tti_mark host = tti_arena_mark(&ctx->host), device = tti_arena_mark(&ctx->device);
    tt_status status = tti_engine_prefix(e);
    int i, busy = 1;
    while (status == TT_OK && busy) {
        status = tti_engine_fill(e);
        if (status == TT_OK) { status = tti_engine_turn(e); }
        tti_arena_release(&ctx->host, host);
        tti_arena_release(&ctx->device, device);
        busy = e->next < e->out->n;
        for (i = 0; i < e->n_slots; i++) { busy |= e->slots[i].item >= 0; }
    }
    return status;
}
TT_API tt_status tt_generate(tt_model *model, const tt_request *requests, int n, const tt_sampling *sampling, tt_completions *out) {
    tt_context *ctx = model->ctx;
    tti_engine e = TT_INIT;
    tt_sampling s;
    tt_status status;
    memset(out, 0, sizeof *out);
    out->ctx = ctx;
    if (ctx->graph_error) { return ctx->status; }
    if (n < 1) { return tt_fail(ctx, TT_ERR_ARG, "tt_generate: number of requests is %d, expected >= 1", n); }
    status = tti_sampling_check(ctx, sampling, &s);
    if (status != TT_OK) { return status; }
    e.ctx = ctx;
    e.model = model;
    e.requests = requests;
    e.s = &s;
    e.out = out;
    status = tti_engine_items(&e, n);
    if (status == TT_OK) { status = tti_engine_open(&e); }
    tt_no_grad_begin(ctx);
    if (status == TT_OK) { status = tti_engine_run(&e); }
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
        return tt_fail(ctx, TT_ERR_ARG, "tt_adamw_create: eps is %g, weight_decay %g, max_grad_norm %g, expected in (0, 1], "
                       "in [0, 100], finite and >= 0", (double)d->eps, (double)d->weight_decay, (double)d->max_grad_norm);
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

/* One number for each parameter, summed here; they come down together, so that a device is waited for once.
 * */
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
        return tt_fail(ctx, TT_ERR_ARG, "tt_optimizer_step: lr is %g, expected 0 .. %g", (double)lr, (double)TT_MAX_LR);
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
    r->tokens = NULL;
    r->kind = NULL;
    r->sampling_logprobs = r->old_logprobs = r->ref_logprobs = NULL;
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
    tt_status status;
    if (c->request != i / all->num_generations) {
        return tt_fail(all->ctx, TT_ERR_ARG,
                       "tt_rollouts_create: completion %d is of request %d, expected %d for each request", i,
                       c->request, all->num_generations);
    }
    r->group = c->request;
    r->sample = c->sample;
    r->prompt_id = q->id;
    r->prompt_length = q->prompt_length;
    response.tokens = c->tokens;
    response.n = c->length;
    response.end_token = end_token;
    status = tti_rollout_fill(all->ctx, r, q->prompt, &response);
    if (status == TT_OK) { memcpy(r->sampling_logprobs, c->logprobs, (size_t)c->length * sizeof(float)); }
    return status;
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

/* The attempt keeps its log-probs; what the teacher wrote has none, for nobody sampled it here. */
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
    fresh.old_logprobs = fresh.ref_logprobs = NULL;
    if (tti_rollout_fill(all->ctx, &fresh, r->tokens, &text) != TT_OK) { return TT_ERR_MEM; }
    memcpy(fresh.sampling_logprobs, r->sampling_logprobs, (size_t)attempt_length * sizeof(float));
    for (t = attempt_length; t < length; t++) {
        fresh.sampling_logprobs[t] = (float)NAN;
        fresh.kind[fresh.prompt_length + t] = TT_KIND_TEACHER;
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

/* Prompts are context, responses targets: also those of teacher and environment, whose log-probs may be
 * wanted. */
TT_API tt_batch *tt_rollouts_batch(tt_context *ctx, const tt_rollouts *all, const int *indices, int n) {
    tt_batch_desc desc = TT_INIT;
    int32_t *offsets, *tokens;
    unsigned char *mask;
    int i, total = 0;
    if (ctx->graph_error) { return NULL; }
    if (!indices) { n = all->n; }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        total += r->prompt_length + r->response_length;
    }
    offsets = (int32_t *)tti_step_alloc(ctx, ((size_t)n + 1) * sizeof *offsets);
    tokens = (int32_t *)tti_step_alloc(ctx, (size_t)total * sizeof *tokens);
    mask = (unsigned char *)tti_step_alloc(ctx, (size_t)total);
    if (!offsets || !tokens || !mask) {
        ctx->graph_error = 1;
        return NULL;
    }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tti_rollout_at(all, indices, i);
        int length = r->prompt_length + r->response_length;
        memcpy(tokens + offsets[i], r->tokens, (size_t)length * sizeof *tokens);
        memset(mask + offsets[i] + r->prompt_length, 1, (size_t)r->response_length);
        offsets[i + 1] = offsets[i] + (int32_t)length;
    }
    desc.n_sequences = n;
    desc.offsets = offsets;
    desc.tokens = tokens;
    desc.mask = mask;
    return tt_batch_create(ctx, &desc);
}

/* ---- [tt:grpo.tokens] which tokens count ---- */

static tt_token_kind tti_kind_of(const tt_rollout *r, int t) {
    return (tt_token_kind)r->kind[r->prompt_length + t];
}

/* Truncated responses may leave the loss (DAPO's overlong filtering): their reward says nothing of their end.
 * */
static int tti_in_loss(const tt_rollout *r, int t, const tt_grpo_config *c) {
    return tti_kind_of(r, t) != TT_KIND_ENVIRONMENT && (r->stopped || !c->mask_truncated_completions);
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

static const tti_aggregation_row tti_aggregations[] = {
    /* in the order of tt_aggregation */
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

static const tti_loss_row tti_losses[] = {
    /* in the order of tt_loss_type */
    {{"ppo_clip", "max(-A r, -A clip(r, 1 - epsilon_low, 1 + epsilon_high))",
      "PPO, arXiv 1707.06347; TRL grpo, dapo"},
     tti_loss_ppo,
     0.2f,
     3,
     TTI_POOL_NONE,
     20},
    {{"cispo", "-sg(min(r, cispo_epsilon_max)) A log p", "MiniMax-M1, arXiv 2506.13585; TRL cispo"},
     tti_loss_cispo,
     0.2f,
     3,
     TTI_POOL_NONE,
     20},
    {{"cispo_clamp", "-sg(clip(r, 1 - epsilon_low, 1 + epsilon_high)) A log p", "verl cispo"},
     tti_loss_cispo_clamp,
     0.2f,
     3,
     TTI_POOL_NONE,
     20},
    {{"reinforce", "-A log p", "Williams 1992"}, tti_loss_reinforce, 0.2f, 3, TTI_POOL_NONE, 20},
    {{"gspo", "ppo_clip of exp(mean of log r over the response)",
      "GSPO, arXiv 2507.18071; TRL importance_sampling_level sequence"},
     tti_loss_ppo,
     0.2f,
     3,
     TTI_POOL_MEAN,
     20},
    {{"gspo_token", "gspo, mean of log r at most 10", "verl gspo"}, tti_loss_ppo, 0.2f, 3, TTI_POOL_MEAN, 10},
    {{"gmpo", "-A exp(mean of log r, each clipped to +-epsilon)", "GMPO, arXiv 2507.20673; verl geo_mean"},
     tti_loss_gmpo,
     0.4f,
     3,
     TTI_POOL_CLIPPED_MEAN,
     20},
    {{"rloo", "ppo_clip of exp(sum of log r over the response)", "RLOO, arXiv 2402.14740; TRL RLOOTrainer"},
     tti_loss_ppo,
     0.2f,
     3,
     TTI_POOL_SUM,
     20}};

/* A loss of the config's own is one of single tokens. */
static tti_pool tti_loss_pool(const tt_grpo_config *c) {
    return c->token_loss ? TTI_POOL_NONE : tti_losses[c->loss].pool;
}

static void tti_token_loss_zero(tt_token_loss *out) {
    memset(out, 0, sizeof *out);
    out->factor = 1;
}

/* The student's loss at this log-ratio (of a token, or pooled). in has config, logp, old_logp, advantage,
 * index. */
static void tti_loss_student(tt_loss_input *in, double log_ratio, tt_token_loss *out) {
    const tti_loss_row *row = &tti_losses[in->config->loss];
    double kept = tti_clip(log_ratio, -20, row->most);
    in->user = in->config->token_loss_user;
    in->log_ratio = log_ratio;
    in->ratio = exp(kept);
    in->dratio = kept == log_ratio ? in->ratio : 0;
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
 * 2504.14945. */
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
    case TT_KIND_OFF_POLICY: tti_loss_luffy(in->config, exp(in->logp), in->advantage, out); break;
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

static const tti_mismatch_row tti_mismatches[] = {
    /* in the order of tt_mismatch */
    {{"off", "1", ""}, tti_mismatch_off, 3},
    {{"token_truncate", "clip(w, mismatch_low, mismatch_high)", "TRL token_truncate, verl token"},
     tti_token_truncate,
     2},
    {{"token_mask", "w, 0 outside the bounds", "TRL token_mask"}, tti_token_mask, 3},
    {{"seq_truncate", "clip(product of w, mismatch_low, mismatch_high)",
      "TRL sequence_truncate, verl sequence"},
     tti_seq_truncate,
     2},
    {{"seq_mask", "product of w, 0 outside the bounds", "TRL sequence_mask"}, tti_seq_mask, 3},
    {{"geometric_mask", "w, 0 where the geometric mean is outside the bounds", "OpenRLHF seq-mask-tis"},
     tti_geometric_mask,
     3}};

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

/* beta KL(old, reference) of a response: PPO's way to stay near the reference, and REINFORCE++'s. */
static tt_status tti_reward_kl(tt_context *ctx, const tt_grpo_config *c, const tt_rollout *r, double *kl) {
    double slope, sum = 0;
    int t;
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
    *kl = (double)c->beta * sum;
    return TT_OK;
}

/* reward = sum of weight * rewards, less what length and KL cost; NaN if all abstain. */
static tt_status tti_reward_sum(tt_rollouts *all, tt_rollout *r, const tt_grpo_config *c,
                                const float *weights, tt_grpo_metrics *m) {
    double sum = 0, overlong = tti_overlong(c, r->response_length), kl = 0;
    int scored = 0, k;
    tt_status status = c->kl_in_reward && c->beta > 0 ? tti_reward_kl(all->ctx, c, r, &kl) : TT_OK;
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

/* Statistics of reward k over those of n responses that have one; with on_policy only over the student's own.
 * */
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
    /* NULL: `batch` does it all */
    void (*group)(const tti_group *);
    /* also where all rewards are equal */
    int equal_too;
    /* after the groups; NULL = nothing */
    void (*batch)(tt_rollouts *, const tt_grpo_config *, const float *weights);
} tti_advantage_row;

static const tti_advantage_row tti_advantages[] = {
    /* in the order of tt_advantage_type */
    {{"grpo", "(R - mean) / (std + eps)", "arXiv 2402.03300; unscaled Dr.GRPO, arXiv 2503.20783"},
     tti_advantage_grpo,
     0,
     NULL},
    {{"rloo", "R - mean of the others", "arXiv 2402.14740"}, tti_advantage_rloo, 0, NULL},
    {{"opo", "R - sum(n R) / sum(n), n: response length", "arXiv 2505.23585; verl opo"},
     tti_advantage_opo,
     0,
     NULL},
    {{"passk", "best: (best - second) / (std + eps), others: 0", "arXiv 2503.19595; verl grpo_passk"},
     tti_advantage_passk,
     0,
     NULL},
    {{"reinforce_pp_baseline", "whitened(R - mean)", "arXiv 2501.03262"},
     tti_advantage_mean,
     0,
     tti_advantage_whiten},
    {{"gpg", "(R - mean) responses / responses with R != 0", "arXiv 2504.02546; verl gpg"},
     tti_advantage_gpg,
     0,
     NULL},
    {{"reinforce_pp", "whitened(R)", "arXiv 2501.03262"}, tti_advantage_plain, 1, tti_advantage_whiten},
    {{"gdpo", "standardised sum of weight (R_k - mean) / std", "arXiv 2601.05242; TRL normalize_then_sum"},
     NULL,
     0,
     tti_advantage_gdpo},
    {{"luffy", "grpo, mean and std of the on-policy responses", "arXiv 2504.14945"},
     tti_advantage_luffy,
     1,
     NULL}};

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
    {TTI_INT(num_mini_batches), 0, 0, 1000000}
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

/* Zeros become defaults: by the table, then those that depend on the loss and the correction that are chosen.
 * */
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
    double weights;          /* sum of the mismatch weights of the student tokens that are kept */
    int n, n_sampled;
    tt_token_loss loss;      /* one for all of them, if the loss pools */
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

static tt_loss_input tti_loss_input_of(const tt_grpo_config *c, const tt_rollout *r, const tti_token_logps *p,
                                       const tti_response_sums *q) {
    tt_loss_input in = TT_INIT;
    in.config = c;
    in.logp = p->now;
    in.old_logp = p->old;
    in.response_log_ratio = q->log_ratio_kept;
    in.advantage = (double)r->advantage;
    in.index = p->index;
    return in;
}

/* One loss of the whole response: of its pooled log-ratio; its slope is by each student token's log p. */
static void tti_pooled_loss(const tt_grpo_config *c, const tt_rollout *r, tti_response_sums *q) {
    tti_pool pool = tti_loss_pool(c);
    double n = pool == TTI_POOL_SUM ? 1 : pool == TTI_POOL_CLIPPED_MEAN ? q->n + 1e-8 : q->n;
    tt_loss_input in = TT_INIT;
    in.config = c;
    in.advantage = (double)r->advantage;
    tti_token_loss_zero(&q->loss);
    tti_loss_student(&in, q->log_ratio / n, &q->loss);
    q->loss.dloss /= n;
}

/* Only tokens that the sampler drew tell of a mismatch; only the student's own move the ratio. */
static void tti_sums_add(tti_response_sums *q, const tt_grpo_config *c, const tt_rollout *r,
                         const tti_token_logps *p, int student) {
    double log_ratio = p->now - p->old;
    int live;
    if (!isnan(p->sampler)) {
        q->log_mismatch += p->old - p->sampler;
        q->gap += p->sampler - p->now;
        q->n_sampled++;
    }
    if (!student) { return; }
    q->log_ratio_kept += tti_clip(log_ratio, -20, 20);
    q->log_ratio += tti_loss_pool(c) == TTI_POOL_CLIPPED_MEAN
                        ? tti_gmpo_clip(c, log_ratio, (double)r->advantage, &live)
                        : log_ratio;
    q->n++;
}

/* First the sums over the response, for the weight of a token may depend on all of them; then, for a pooled
 * loss, the sum of those weights. */
static tti_response_sums tti_response_read(const tt_rollout *r, const tti_batch_loss *b, size_t at,
                                           const tt_grpo_config *c) {
    double threshold = (double)c->off_policy_mask_threshold;
    tti_response_sums q;
    int t;
    memset(&q, 0, sizeof q);
    for (t = 0; t < r->response_length; t++) {
        tti_token_logps p = tti_token_logps_at(r, b, at, t);
        if (tti_in_loss(r, t, c)) { tti_sums_add(&q, c, r, &p, tti_is_student(r, t)); }
    }
    q.policy =
        threshold != 0 && r->advantage < 0 && q.n_sampled > 0 && q.gap / q.n_sampled > threshold ? 0 : 1;
    if (tti_loss_pool(c) == TTI_POOL_NONE || q.n == 0) { return q; }
    for (t = 0; t < r->response_length; t++) {
        tti_token_logps p = tti_token_logps_at(r, b, at, t);
        if (tti_in_loss(r, t, c) && tti_is_student(r, t)) {
            q.weights += tti_mismatch_weight(c, &q, &p) * p.kept;
        }
    }
    tti_pooled_loss(c, r, &q);
    return q;
}

/* The pooled loss as the loss of one of its tokens: each of them moves the ratio that all of them use. */
static tt_token_loss tti_pooled_at(const tt_grpo_config *c, const tt_rollout *r, const tti_token_logps *p,
                                   const tti_response_sums *q, double weight) {
    tt_token_loss x = q->loss;
    int live = 1;
    if (tti_loss_pool(c) == TTI_POOL_CLIPPED_MEAN) {
        tti_gmpo_clip(c, p->now - p->old, (double)r->advantage, &live);
    }
    x.clipped_low |= !live && r->advantage < 0;
    x.clipped_high |= !live && r->advantage > 0;
    x.loss *= weight * p->kept;
    x.dloss *= live ? q->weights * q->policy : 0;
    return x;
}

/* Loss of token t; *weight receives its mismatch weight. */
static tt_token_loss tti_loss_at(const tt_grpo_config *c, const tt_rollout *r, int t,
                                 const tti_response_sums *q, const tti_token_logps *p, double *weight) {
    tt_loss_input in = tti_loss_input_of(c, r, p, q);
    tt_token_loss x;
    *weight = tti_mismatch_weight(c, q, p) * q->policy;
    if (tti_is_student(r, t) && tti_loss_pool(c) != TTI_POOL_NONE) {
        x = tti_pooled_at(c, r, p, q, *weight);
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
    double gap = isnan(p->sampler) ? 0 : fabs(p->old - p->sampler);
    m->entropy += p->entropy / d->tokens;
    m->kl += x->kl / d->tokens;
    m->ppo_kl += (p->old - p->now) / d->tokens;
    m->clip_low += x->clipped_low / d->tokens;
    m->clip_high += x->clipped_high / d->tokens;
    m->clip_dual += x->clipped_dual / d->tokens;
    m->mismatch_mean += weight / d->tokens;
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

/* Denominators are those of the whole optimizer batch, however it is cut into micro-batches (but for BNPO).
 * */
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
 * and put "response, reason, phrase" in the place of the response. Any function may be the teacher; the
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
    double init = (double)c.init_pct, low = (double)c.min_pct,
           days = c.total_steps / 3 > 1 ? c.total_steps / 3 : 1;
    double at = step < days ? step : days, pct;
    switch (c.schedule) {
    case TT_THINK_CONSTANT: return init;
    case TT_THINK_COSINE: return low + 0.5 * (init - low) * (1 + cos(3.141592653589793 * at / days));
    case TT_THINK_EXP:
        pct = init * pow(pow((low > 1e-8 ? low : 1e-8) / init, 1 / days), at);
        return pct > low ? pct : low;
    case TT_THINK_LINEAR: break;
    }
    return init - (init - low) * at / days;
}

/* pct never rises, so "off for good at the first step where it is low" is a test of this step alone. */
TT_API int tt_think_active(const tt_think_config *config, int step) {
    tt_think_config c = tti_think_resolve(config);
    return c.off_eps < 0 || tt_think_pct(&c, step) > (double)c.off_eps + 0.01;
}

/* ---- [tt:think.tags] the three texts of a feedback ---- */

static const char *const tti_tags[3] = {"reason", "phrase", "opinion"};

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
        return tt_fail(ctx, TT_ERR_ARG, "tt_teacher_follow: the teacher is the student itself, expected another model");
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

/* k = max(1, floor(eligible pct)) of each group's stopped responses, without replacement: a shuffle whose
 * random stream is a function of (seed, step, prompt id). chosen receives rollout indices; returns how many.
 * */
static int tti_think_select(const tt_rollouts *all, const tt_think_config *c, int step, int *chosen,
                            tt_think_metrics *m) {
    int g, i, n = 0, size = all->num_generations;
    for (g = 0; g < all->n_groups; g++) {
        int *pool = chosen + n, eligible = 0, k;
        tt_rng rng;
        for (i = g * size; i < (g + 1) * size; i++) {
            if (tti_is_eligible(&all->items[i])) { pool[eligible++] = i; }
        }
        m->n_eligible += eligible;
        k = (int)floor(eligible * tt_think_pct(c, step));
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
static tt_status tti_think_check(tt_context *ctx, const tt_augment *how, const tt_think_config *c) {
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
    return TT_OK;
}

TT_API tt_status tt_think_augment(tt_rollouts *all, const tt_augment *how, const tt_think_config *config,
                                  tt_think_metrics *metrics) {
    tt_think_config c = tti_think_resolve(config);
    tt_think_metrics m = TT_INIT;
    tti_lesson l;
    tt_status status = tti_think_check(all->ctx, how, &c);
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

/* Of guided responses: hit (right after feedback), rescued (wrong before, right after), spoiled (the
 * reverse). */
TT_API void tt_think_score(const tt_rollouts *all, tt_think_metrics *m) {
    double guided = 0, own = 0, hits = 0, wrong = 0, rescued = 0, right = 0, spoiled = 0, guided_sum = 0,
           own_sum = 0;
    int i;
    for (i = 0; i < all->n; i++) {
        const tt_rollout *r = &all->items[i];
        int now = r->rewards[0] > 0.5f, before = r->attempt_reward > 0.5f;
        double reward = isnan(r->reward) ? 0 : (double)r->reward;
        if (r->off_policy) { continue; }
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
 * The loops that tie the chapters together. A task gives questions and rewards (examples/tasks.h has some). The
 * trainer turns questions into prompts, prompts into rollouts, rollouts (after a teacher's feedback) into
 * rewards, advantages, gradients and one update. Its only state is the model, the optimizer and a step
 * counter: prompts, samples and the teacher's choices are functions of (seed, step), so a resumed run is
 * the run that was never interrupted. */

/* Streams of random numbers, see tt_random: which questions a step asks, and its samples. */
enum { TTI_STREAM_PROMPT = 0x73696770, TTI_STREAM_SAMPLE };

/* ---- [tt:train.prompts] questions of a task as prompts ---- */

/* A callback of the user's, called after tt_error_clear, gave status: an error that it did not say is named here. */
static tt_status tti_called(tt_context *ctx, tt_status status, const char *who, uint64_t number) {
    if (status == TT_OK || tt_error_status(ctx) != TT_OK) { return status; }
    return tt_fail(ctx, status, "%s %llu failed: %s", who, (unsigned long long)number, tt_status_name(status));
}

static tt_status tti_task_question(tt_context *ctx, const tt_task *task, int split, uint64_t index,
                                   tt_text *question, tt_text *answer) {
    const char *who = split ? "task.question: held-out question" : "task.question: question";
    if (!ctx->graph_error) { tt_error_clear(ctx); }
    return tti_called(ctx, task->question(task->user, split, index, question, answer), who, index);
}

TT_API void tt_prompts_free(tt_prompts *p) {
    size_t n = (size_t)p->n;
    if (!p->ctx) { return; }
    tt_text_free(&p->texts);
    tt_ids_free(&p->ids);
    tt_free(p->ctx, p->at, 3 * n, sizeof *p->at);
    tt_free(p->ctx, p->requests, n, sizeof *p->requests);
    memset(p, 0, sizeof *p);
}

TT_API tt_status tt_prompts_create(tt_context *ctx, const tt_task *task, const tt_tokenizer *tokenizer, int n, tt_prompts *out) {
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

/* Asks the task for a question and its answer: question NUL answer NUL at the end of texts. */
static tt_status tti_prompts_ask(tt_prompts *p, int i, int split, uint64_t number) {
    tt_text answer = TT_INIT;
    size_t *at = p->at + 3 * (size_t)i;
    tt_status status;
    answer.ctx = p->ctx;
    at[0] = p->texts.size;
    TTI_TRY(tti_task_question(p->ctx, p->task, split, number, &p->texts, &answer));
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
        status = tt_fail(p->ctx, TT_ERR_ARG, "task %s: prompt %d has no token", p->task->name ? p->task->name : "", i);
        goto done;
    }
    for (k = 0; k < p->n; k++) { p->requests[k].prompt = p->ids.data + p->at[3 * k + 2]; }      /* ids may have moved */
done:
    return status;
}

TT_API tt_status tt_prompts_input(const tt_prompts *p, int i, tt_text *response, tt_reward_input *in) {
    tt_status status;
    response->size = 0;
    status = tt_decode(p->tokenizer, in->tokens, (size_t)(in->n_tokens - (in->stopped ? 1 : 0)), 0, response);
    in->prompt = i;
    in->question = tt_prompts_question(p, i);
    in->answer = tt_prompts_answer(p, i);
    in->response = response->data;
    in->response_size = response->size;
    return status;
}

/* What trainer and evaluation ask of model, tokenizer and task. */
TT_API tt_status tt_task_check(tt_model *model, const tt_tokenizer *tokenizer, const tt_task *task, const char *who, int *end_token) {
    tt_context *ctx = tt_model_context(model);
    const char *missing = !tokenizer ? "tokenizer" : !task ? "task" : !task->question ? "task.question" :
                          !task->reward ? "task.reward" : !task->end_token ? "task.end_token" : NULL;
    int vocab = tt_model_config_get(model)->vocab_size;
    if (missing) { return tt_fail(ctx, TT_ERR_ARG, "%s: %s is NULL", who, missing); }
    if (!task->prompt_template || !strstr(task->prompt_template, "{question}")) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: task.prompt_template is \"%.60s\", expected a text with {question}", who,
                       task->prompt_template ? task->prompt_template : "");
    }
    if (tt_vocab_size(tokenizer) > vocab) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: the tokenizer has %d tokens, the model's vocab_size is %d", who,
                       tt_vocab_size(tokenizer), vocab);
    }
    *end_token = tt_token_id(tokenizer, task->end_token);
    if (*end_token >= 0) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "%s: task.end_token is \"%.60s\", which is no token of the tokenizer", who, task->end_token);
}

/* ---- [tt:train.rewards] reward functions are the user's: what fails in them costs a response its score, not the run
 * its life ---- */

static int tti_stops_run(tt_status status) { return status == TT_ERR_STOP || status == TT_ERR_MEM; }

/* After a call that gave status: counts and logs the failure, names where it was. */
static void tti_reward_failed(tt_context *ctx, tt_reward_errors *errors, const char *name, const tt_reward_input *in, tt_status status) {
    char why[sizeof errors->text];
    snprintf(why, sizeof why, "%.500s", tt_error_status(ctx) == status ? tt_error(ctx) : tt_status_name(status));
    tt_fail(ctx, status, "reward %s of prompt %d, sample %d: %.400s", name ? name : "", in->prompt, in->sample, why);
    if (errors->n++ == 0) {
        errors->status = status;
        snprintf(errors->text, sizeof errors->text, "%.500s", tt_error(ctx));
    }
    tt_error_clear(ctx);
}

TT_API tt_status tt_reward_call(tt_context *ctx, const tt_reward *r, const tt_reward_input *in, tt_reward_errors *errors, float *out) {
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

/* ---- [tt:train.judge] what a response did ---- */

/* Where a response begins to reflect, by these words; its end if it does not. */
static size_t tti_reflection_at(const char *response) {
    static const char *const words[] = {"wait", "Wait", "check", "Check", "verify", "Verify", "mentor", "Mentor"};
    size_t first = strlen(response), i;
    for (i = 0; i < sizeof words / sizeof *words; i++) {
        const char *at = strstr(response, words[i]);
        if (at && (size_t)(at - response) < first) { first = (size_t)(at - response); }
    }
    return first;
}

/* Which reflection it is, by the first kind of which a word occurs; none of them: not told. */
static tt_behaviour tti_behaviour_by_words(const char *reflection) {
    static const struct { tt_behaviour kind; const char *word; } words[] = {
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

/* The first attempt is what stands before the reflection; the task's reward judges it as it judges the whole. */
static tt_status tti_judge_by_reward(tt_context *ctx, const tt_task *task, const tt_reward_input *in, float reward, tt_outcome *out) {
    tt_text attempt = TT_INIT;
    tt_reward_input first = *in;
    tt_status status;
    out->final_right = out->first_right = reward > 0.5f;
    first.response_size = tti_reflection_at(in->response);
    if (first.response_size == in->response_size) { return TT_OK; }
    out->reflects = 1;
    out->behaviour = tti_behaviour_by_words(in->response + first.response_size);
    attempt.ctx = ctx;
    TTI_TRY(tt_text_append(&attempt, in->response, first.response_size));
    first.response = attempt.data;
    first.stopped = 1;
    TTI_TRY(task->reward(task->user, &first, &reward));
    out->first_right = reward > 0.5f;
done:
    tt_text_free(&attempt);
    return status;
}

TT_API tt_status tt_judge(tt_context *ctx, const tt_task *task, const tt_reward_input *in, float reward,
                          tt_reward_errors *errors, tt_outcome *out) {
    tt_status status;
    memset(out, 0, sizeof *out);
    if (isnan(reward)) { return TT_OK; }
    status = task->judge ? task->judge(task->user, in, out) : tti_judge_by_reward(ctx, task, in, reward, out);
    if (status == TT_OK || tti_stops_run(status)) { return status; }
    memset(out, 0, sizeof *out);
    tti_reward_failed(ctx, errors, task->name, in, status);
    return TT_OK;
}

TT_API void tt_tally_add(tt_tally *t, const tt_outcome *o, int length, int stopped) {
    t->n++;
    t->right += o->final_right;
    t->first += o->first_right;
    t->reflects += o->reflects;
    t->corrected += o->final_right && !o->first_right;
    t->spoiled += o->first_right && !o->final_right;
    t->length += length;
    t->stopped += stopped;
    t->behaviour[o->behaviour]++;
}

static double tti_ratio(double a, double b) { return b > 0 ? a / b : 0; }

TT_API tt_rates tt_tally_rates(const tt_tally *t) {
    tt_rates r;
    int i;
    r.accuracy = tti_ratio(t->right, t->n);
    r.first_accuracy = tti_ratio(t->first, t->n);
    r.reflection_rate = tti_ratio(t->reflects, t->n);
    r.correction_rate = tti_ratio(t->corrected, t->n - t->first);
    r.spoil_rate = tti_ratio(t->spoiled, t->first);
    r.mean_length = tti_ratio(t->length, t->n);
    r.stopped_rate = tti_ratio(t->stopped, t->n);
    for (i = 0; i < TT_N_BEHAVIOURS; i++) { r.behaviour[i] = tti_ratio(t->behaviour[i], t->n); }
    return r;
}

/* All that a task without end may ask cannot be looked at: of such a task, nothing is. */
static tt_status tti_check_prompts(tt_context *ctx, const char *who, const tt_task *task, const tt_tokenizer *tokenizer, int split, int n, int max_new_tokens, int limit) {
    tt_text question = TT_INIT, answer = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    int i;
    question.ctx = answer.ctx = ids.ctx = ctx;
    for (i = 0; i < n && status == TT_OK; i++) {
        question.size = answer.size = 0;
        status = tti_task_question(ctx, task, split, (uint64_t)i, &question, &answer);
        if (status == TT_OK) { status = tt_text_append(&question, "", 0); }
        ids.size = 0;
        if (status == TT_OK) { status = tt_encode_prompt(tokenizer, task->prompt_template, strlen(task->prompt_template), question.data, strlen(question.data), &ids); }
        if (status != TT_OK || ids.size <= (size_t)(limit - max_new_tokens)) { continue; }
        status = tt_fail(ctx, TT_ERR_ARG, "%s: question %d (\"%.40s\") makes a prompt of %lu tokens, which leaves no room for %d new ones in max_position_embeddings %d; see tt_jsonl_limit",
                         who, i, question.data, (unsigned long)ids.size, max_new_tokens, limit);
    }
    tt_ids_free(&ids);
    tt_text_free(&question);
    tt_text_free(&answer);
    return status;
}

/* ---- more than one process ----
 * Part sums wait like the digits of a binary counter: levels[l] holds the sum of 2^l parts until as many more are there. */
enum { TTI_MAX_LEVELS = 31 };
struct tt_reducer {
    tt_context *ctx;
    tt_reducer_desc desc;             /* resolved                              */
    size_t size;                      /* values of all gradients               */
    size_t room;                      /* size, or more if there are hardly any */
    float *flat;                      /* [room] what the hook sums; NULL without a hook */
    float *levels[TTI_MAX_LEVELS];    /* [size] each                           */
    int n_levels, n_added;
};
static tt_status tti_reducer_check(tt_context *ctx, tt_reducer_desc *d) {
    static const char *const who = "tt_reducer_create";
    if (d->world_size == 0) { d->world_size = 1; }
    if (d->world_size < 1 || d->rank < 0 || d->rank >= d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: rank is %d of world_size %d, expected 0 <= rank < world_size", who, d->rank, d->world_size);
    }
    if (d->world_size > 1 && !d->allreduce) { return tt_fail(ctx, TT_ERR_ARG, "%s: world_size is %d, expected 1 without allreduce", who, d->world_size); }
    if (d->n_parts == 0) { d->n_parts = d->world_size; return TT_OK; }
    if (d->n_parts < 1 || (d->n_parts & (d->n_parts - 1)) || d->n_parts % d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: n_parts is %d, expected a power of two and a multiple of world_size %d", who, d->n_parts, d->world_size);
    }
    return TT_OK;
}
TT_API tt_reducer *tt_reducer_create(tt_context *ctx, const tt_reducer_desc *desc) {
    tt_reducer_desc d = *desc;
    tt_reducer *r;
    int i, ok = 1;
    if (!d.model) { tt_fail(ctx, TT_ERR_ARG, "tt_reducer_create: model is NULL"); return NULL; }
    if (tti_reducer_check(ctx, &d) != TT_OK) { return NULL; }
    r = (tt_reducer *)tt_alloc(ctx, 1, sizeof *r);
    if (!r) { return NULL; }
    r->ctx = ctx;
    r->desc = d;
    for (i = 0; i < d.model->n_params; i++) { r->size += d.model->params[i]->requires_grad ? d.model->params[i]->size : 0; }
    r->room = r->size < 1024 ? 1024 : r->size;
    if (d.allreduce) { ok = (r->flat = (float *)ctx->backend->alloc(ctx, r->room * sizeof(float))) != NULL; }
    for (i = d.n_parts / d.world_size; ok && i > 1; i /= 2) { ok = (r->levels[r->n_levels++] = (float *)ctx->backend->alloc(ctx, r->size * sizeof(float))) != NULL; }
    if (!ok) { tt_reducer_destroy(r); return NULL; }
    return r;
}
TT_API void tt_reducer_destroy(tt_reducer *r) {
    int i;
    if (!r) { return; }
    if (r->flat) { r->ctx->backend->free(r->ctx, r->flat, r->room * sizeof(float)); }
    for (i = 0; i < r->n_levels; i++) { if (r->levels[i]) { r->ctx->backend->free(r->ctx, r->levels[i], r->size * sizeof(float)); } }
    tt_free(r->ctx, r, 1, sizeof *r);
}
TT_API const tt_reducer_desc *tt_reducer_desc_get(const tt_reducer *r) { return &r->desc; }

/* One pass over all gradients and their places in a flat buffer: moved there, brought back, or added to. */
typedef enum tti_flat { TTI_FLAT_STORE, TTI_FLAT_LOAD, TTI_FLAT_ADD } tti_flat;
static tt_status tti_reducer_flat(tt_reducer *r, float *flat, tti_flat what) {
    const tt_backend *b = r->ctx->backend;
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < r->desc.model->n_params && status == TT_OK; i++) {
        tt_tensor *p = r->desc.model->params[i];
        float *grad;
        if (!p->requires_grad) { continue; }
        grad = tt_grad(p);
        if (!grad) { return TT_ERR_MEM; }
        if (what == TTI_FLAT_STORE) { status = b->copy(r->ctx, flat, grad, p->size * sizeof(float)); }
        else if (what == TTI_FLAT_LOAD) { status = b->copy(r->ctx, grad, flat, p->size * sizeof(float)); }
        else { status = b->axpy(r->ctx, grad, flat, 1, p->size); }
        flat += p->size;
    }
    return status;
}
TT_API tt_status tt_reducer_add(tt_reducer *r) {
    int n = r->desc.n_parts / r->desc.world_size, level = 0, count = ++r->n_added;
    tt_status status = TT_OK;
    if (count > n) { return tt_fail(r->ctx, TT_ERR_ARG, "tt_reducer_add: part %d, expected %d of n_parts %d on each of %d ranks", count, n, r->desc.n_parts, r->desc.world_size); }
    for (; count % 2 == 0 && status == TT_OK; count /= 2) { status = tti_reducer_flat(r, r->levels[level++], TTI_FLAT_ADD); }
    if (r->n_added == n || status != TT_OK) { return status; }
    status = tti_reducer_flat(r, r->levels[level], TTI_FLAT_STORE);
    tt_model_zero_grad(r->desc.model);
    return status;
}
TT_API tt_status tt_reducer_sum(tt_reducer *r) {
    int n = r->desc.n_parts / r->desc.world_size, added = r->n_added;
    tt_status status;
    r->n_added = 0;
    if (added != n) { return tt_fail(r->ctx, TT_ERR_ARG, "tt_reducer_sum: %d parts were added, expected %d", added, n); }
    if (!r->desc.allreduce) { return TT_OK; }
    status = tti_reducer_flat(r, r->flat, TTI_FLAT_STORE);
    if (status == TT_OK) { status = r->desc.allreduce(r->desc.user, r->flat, r->size); }
    return status == TT_OK ? tti_reducer_flat(r, r->flat, TTI_FLAT_LOAD) : status;
}
/* Host values through the hook, in pieces that fit into the flat buffer. */
static tt_status tti_reducer_host(tt_reducer *r, float *values, size_t n) {
    const tt_backend *b = r->ctx->backend;
    tt_status status = TT_OK;
    while (n > 0 && status == TT_OK) {
        size_t piece = n < r->room ? n : r->room;
        status = b->upload(r->ctx, r->flat, values, piece * sizeof(float));
        if (status == TT_OK) { status = r->desc.allreduce(r->desc.user, r->flat, piece); }
        if (status == TT_OK) { status = b->download(r->ctx, values, r->flat, piece * sizeof(float)); }
        values += piece;
        n -= piece;
    }
    return status;
}
/* A sum in which one rank alone has something is a copy. The 53 bits of a double fit into three floats. */
TT_API tt_status tt_reducer_gather(tt_reducer *r, const double *mine, int n, double *all) {
    size_t count = (size_t)n, total = count * (size_t)r->desc.world_size, i;
    float *thirds, *own;
    tt_status status;
    if (!r->desc.allreduce) { memcpy(all, mine, count * sizeof *all); return TT_OK; }
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
    for (i = 0; i < total && status == TT_OK; i++) { all[i] = (double)thirds[3 * i] + (double)thirds[3 * i + 1] + (double)thirds[3 * i + 2]; }
    tt_free(r->ctx, thirds, 3 * total, sizeof *thirds);
    return status;
}

/* ---- trainer ---- */
enum { TTI_TROUBLE_NUMBER, TTI_TROUBLE_REWARD, TTI_TROUBLE_ENTROPY, TTI_N_TROUBLES };
struct tt_trainer {
    tt_context *ctx;
    tt_trainer_desc desc;             /* resolved                              */
    tt_task task;                     /* copies: the caller's may go           */
    tt_teacher teacher;
    tt_reward rewards[TT_MAX_REWARDS];    /* the task's first                  */
    float weights[TT_MAX_REWARDS];
    int n_rewards;
    tt_optimizer *optimizer;
    tt_model *reference;              /* own copy; NULL if lent or not needed  */
    tt_reducer *reducer;
    tt_rollouts rollouts;             /* of the last step, this rank's         */
    int end_token, step, stepping;    /* stepping: 1 within tt_trainer_step    */
    int troubles[TTI_N_TROUBLES];     /* steps in a row with each              */
    double num_tokens;
};

static tt_status tti_trainer_resolve_grpo(tt_context *ctx, tt_trainer_desc *d) {
    static const char *const who = "tt_trainer_create";
    if (d->grpo.num_generations == 0) { d->grpo.num_generations = 8; }
    if (d->grpo.max_completion_length == 0) { d->grpo.max_completion_length = 128; }
    if (d->grpo.temperature == 0) { d->grpo.temperature = 1; }
    if (d->grpo.num_iterations == 0) { d->grpo.num_iterations = 1; }
    if (d->grpo.num_mini_batches == 0) { d->grpo.num_mini_batches = 1; }
    if (d->grpo.micro_batch_tokens == 0) { d->grpo.micro_batch_tokens = 8192; }
    if (d->grpo.num_generations < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: num_generations is %d, expected >= 1", who, d->grpo.num_generations); }
    if (!(d->grpo.temperature > 0)) { return tt_fail(ctx, TT_ERR_ARG, "%s: temperature is %g, expected > 0", who, (double)d->grpo.temperature); }
    if (d->grpo.num_iterations < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: num_iterations is %d, expected >= 1", who, d->grpo.num_iterations); }
    if (d->grpo.micro_batch_tokens < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: micro_batch_tokens is %d, expected >= 1", who, d->grpo.micro_batch_tokens); }
    if (d->grpo.max_completion_length < 1 || d->grpo.max_completion_length >= tt_model_config_get(d->model)->max_position_embeddings) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: max_completion_length is %d, expected 1 .. max_position_embeddings %d - 1", who,
                       d->grpo.max_completion_length, tt_model_config_get(d->model)->max_position_embeddings);
    }
    return tt_grpo_check(ctx, &d->grpo);
}
static tt_status tti_trainer_resolve_batch(tt_context *ctx, tt_trainer_desc *d) {
    static const char *const who = "tt_trainer_create";
    int parts;
    if (d->prompts_per_step == 0) { d->prompts_per_step = 16; }
    if (d->world_size == 0) { d->world_size = 1; }
    if (d->world_size < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: world_size is %d, expected >= 1", who, d->world_size); }
    if (d->prompts_per_step < 1 || d->prompts_per_step % d->world_size) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: prompts_per_step is %d, expected a multiple of world_size %d", who, d->prompts_per_step, d->world_size);
    }
    if (d->prompts_per_step > INT_MAX / d->grpo.num_generations) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: prompts_per_step %d x num_generations %d is too large", who, d->prompts_per_step, d->grpo.num_generations);
    }
    if (d->grpo.num_mini_batches < 1 || (d->prompts_per_step / d->world_size) % d->grpo.num_mini_batches) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: num_mini_batches is %d, expected a divisor of the rank's %d prompts", who, d->grpo.num_mini_batches, d->prompts_per_step / d->world_size);
    }
    parts = d->gradient_parts == 0 ? d->world_size : d->gradient_parts;
    if (parts < 1 || d->prompts_per_step / d->grpo.num_mini_batches % parts) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: gradient_parts is %d, expected a divisor of the mini-batch's %d prompts", who, parts, d->prompts_per_step / d->grpo.num_mini_batches);
    }
    return TT_OK;
}
static tt_status tti_schedule_check(tt_context *ctx, const char *who, const tt_schedule *s) {
    double most = (double)TT_MAX_LR;
    if (!(s->lr > 0 && (double)s->lr <= most)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: schedule.lr is %g, expected > 0 and at most %g", who, (double)s->lr, most);
    }
    if (!(s->min_lr >= 0 && (double)s->min_lr <= most)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: schedule.min_lr is %g, expected 0 .. %g", who, (double)s->min_lr, most);
    }
    if (s->warmup_steps < 0 || s->total_steps < 0) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: schedule.warmup_steps is %d and total_steps %d, expected >= 0", who,
                       s->warmup_steps, s->total_steps);
    }
    if ((int)s->type < 0 || (int)s->type > TT_COSINE) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: schedule.type is %d, expected TT_CONSTANT, TT_LINEAR or TT_COSINE", who,
                       (int)s->type);
    }
    return TT_OK;
}
static tt_status tti_trainer_resolve(tt_context *ctx, tt_trainer_desc *d) {
    static const char *const who = "tt_trainer_create";
    tt_status status = tti_trainer_resolve_grpo(ctx, d);
    if (status == TT_OK) { status = tti_trainer_resolve_batch(ctx, d); }
    if (status == TT_OK) { status = tti_schedule_check(ctx, who, &d->schedule); }
    if (status != TT_OK) { return status; }
    if (d->abort_entropy == 0) { d->abort_entropy = 0.001f; }
    if (d->off_policy && d->n_off_policy == 0) { d->n_off_policy = 1; }
    if (d->max_batch < 0) { return tt_fail(ctx, TT_ERR_ARG, "%s: max_batch is %d, expected >= 1, or 0 for 128", who, d->max_batch); }
    if (d->teacher && !d->teacher->feedback) { return tt_fail(ctx, TT_ERR_ARG, "%s: teacher.feedback is NULL", who); }
    if (d->teacher && d->think.total_steps < 1) { return tt_fail(ctx, TT_ERR_ARG, "%s: think.total_steps is %d, expected >= 1 with a teacher", who, d->think.total_steps); }
    if (d->n_rewards < 0 || d->n_rewards >= TT_MAX_REWARDS || (d->n_rewards > 0 && !d->rewards)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: n_rewards is %d, expected 0 .. %d with as many rewards", who, d->n_rewards, TT_MAX_REWARDS - 1);
    }
    if (d->n_off_policy < 0 || d->n_off_policy >= d->grpo.num_generations || (d->n_off_policy > 0 && !d->off_policy)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: n_off_policy is %d, expected 0 .. num_generations %d - 1, with off_policy", who, d->n_off_policy, d->grpo.num_generations);
    }
    return TT_OK;
}
static tt_status tti_trainer_rewards(tt_trainer *t) {
    int k;
    t->rewards[0].name = t->task.name;
    t->rewards[0].reward = t->task.reward;
    t->rewards[0].user = t->task.user;
    t->weights[0] = t->desc.task_weight != 0 ? t->desc.task_weight : 1;
    t->n_rewards = 1 + t->desc.n_rewards;
    for (k = 1; k < t->n_rewards; k++) {
        const tt_reward *r = &t->desc.rewards[k - 1];
        if (!r->reward || !r->name) { return tt_fail(t->ctx, TT_ERR_ARG, "tt_trainer_create: rewards[%d].%s is NULL", k - 1, r->name ? "reward" : "name"); }
        t->rewards[k] = *r;
        t->weights[k] = r->log_only ? 0 : r->weight != 0 ? r->weight : 1;
    }
    return TT_OK;
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
TT_API tt_trainer *tt_trainer_create(tt_context *ctx, const tt_trainer_desc *desc) {
    tt_trainer *t;
    tt_trainer_desc d = *desc;
    int end, wants_reference = d.grpo.beta != 0 || d.measure_kl;
    if (!d.model) { tt_fail(ctx, TT_ERR_ARG, "tt_trainer_create: model is NULL"); return NULL; }
    if (tt_task_check(d.model, d.tokenizer, d.task, "tt_trainer_create", &end) != TT_OK || tti_trainer_resolve(ctx, &d) != TT_OK) { return NULL; }
    if (tti_check_prompts(ctx, "tt_trainer_create", d.task, d.tokenizer, 0, d.task->count ? d.task->count(d.task->user, 0) : 0, d.grpo.max_completion_length,
                          tt_model_config_get(d.model)->max_position_embeddings) != TT_OK) { return NULL; }
    t = (tt_trainer *)tt_alloc(ctx, 1, sizeof *t);
    if (!t) { return NULL; }
    t->ctx = ctx;
    t->desc = d;
    t->task = *d.task;
    t->desc.task = &t->task;
    if (d.teacher) { t->teacher = *d.teacher; t->desc.teacher = &t->teacher; }
    t->end_token = end;
    if (tti_trainer_rewards(t) == TT_OK) { t->optimizer = tt_adamw_create(d.model, &d.adamw); }
    if (t->optimizer) { t->reducer = tti_trainer_reducer(ctx, &d); }
    t->desc.rewards = NULL;
    if (t->reducer && wants_reference && !d.reference) {
        if (tt_model_lora_get(d.model)) { t->desc.reference = d.model; }      /* its adapters off */
        else { t->reference = t->desc.reference = tt_model_copy(d.model); }
    }
    if (!t->reducer || (wants_reference && !t->desc.reference)) { tt_trainer_destroy(t); return NULL; }
    return t;
}
TT_API void tt_trainer_destroy(tt_trainer *t) {
    if (!t) { return; }
    tt_rollouts_free(&t->rollouts);
    tt_reducer_destroy(t->reducer);
    tt_optimizer_destroy(t->optimizer);
    tt_model_destroy(t->reference);
    tt_free(t->ctx, t, 1, sizeof *t);
}
TT_API int tt_trainer_step_count(const tt_trainer *t) { return t->step; }
TT_API const tt_rollouts *tt_trainer_rollouts(const tt_trainer *t) { return &t->rollouts; }

/* ---- one step: questions, samples, rewards, feedback ----
 * Question numbers are random functions of (seed, step, place); dynamic sampling asks again in further rounds, whose
 * numbers and random streams are others. */
typedef struct tti_step {
    tt_prompts prompts;              /* one for each group                       */
    int *groups;                      /* [n] those of the round                   */
    tt_rollouts fresh;                /* of the round                             */
    tt_tally tally;                  /* of the student's own responses           */
    tt_reward_errors errors;
    tt_step_metrics metrics;
    tt_rollouts board;                /* see tti_board_make                       */
    unsigned char *kinds;             /* of the board                             */
    float *logprobs;
} tti_step;
/* Place in the step of group i of a rank: each mini-batch is split over the ranks, so it holds the same groups at any
 * number of them. */
static int tti_group_place(const tt_trainer *t, int rank, int i) {
    int whole = t->desc.prompts_per_step / t->desc.grpo.num_mini_batches, own = whole / t->desc.world_size;
    return i / own * whole + rank * own + i % own;
}
static uint64_t tti_prompt_place(const tt_trainer *t, int i) {
    return (uint64_t)t->step * (uint64_t)t->desc.prompts_per_step + (uint64_t)tti_group_place(t, t->desc.rank, i);
}
static uint64_t tti_prompt_number(const tt_trainer *t, int i, int round) {
    return tt_random(t->desc.seed, (uint64_t)TTI_STREAM_PROMPT + ((uint64_t)round << 32), tti_prompt_place(t, i)) >> 1;
}
/* The prompts of this step and rank. */
static tt_status tti_step_prompts(tt_trainer *t, tti_step *s) {
    const tt_trainer_desc *d = &t->desc;
    int n = d->prompts_per_step / d->world_size, i;
    tt_status status = tt_prompts_create(t->ctx, d->task, d->tokenizer, n, &s->prompts);
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tt_prompts_set(&s->prompts, i, 0, tti_prompt_number(t, i, 0));
        s->prompts.requests[i].id = tti_prompt_place(t, i);
        s->prompts.requests[i].n = d->grpo.num_generations;
    }
    s->groups = status == TT_OK ? (int *)tt_alloc(t->ctx, (size_t)n, sizeof *s->groups) : NULL;
    for (i = 0; s->groups && i < n; i++) { s->groups[i] = i; }
    return status == TT_OK && !s->groups ? TT_ERR_MEM : status;
}
/* Other questions for the n groups of this round. */
static tt_status tti_step_redraw(tt_trainer *t, tti_step *s, int n, int round) {
    int k;
    tt_status status = TT_OK;
    for (k = 0; k < n && status == TT_OK; k++) {
        int g = s->groups[k];
        status = tt_prompts_set(&s->prompts, g, 0, tti_prompt_number(t, g, round));
        s->prompts.requests[g].id = ((uint64_t)round << 48) + tti_prompt_place(t, g);
    }
    return status;
}
static tt_status tti_step_sample(tt_trainer *t, tti_step *s, const tt_request *requests, int n) {
    const tt_trainer_desc *d = &t->desc;
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    int limit = tt_model_config_get(d->model)->max_position_embeddings, i;
    tt_status status;
    for (i = 0; i < n; i++) {
        if (requests[i].prompt_length <= limit - d->grpo.max_completion_length) { continue; }
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_trainer_step: prompt %d has %d tokens and max_completion_length is %d, expected a sum <= max_position_embeddings %d",
                       i, requests[i].prompt_length, d->grpo.max_completion_length, limit);
    }
    sampling.max_new_tokens = d->grpo.max_completion_length;
    sampling.temperature = d->grpo.temperature;
    sampling.seed = tt_random(d->seed, TTI_STREAM_SAMPLE, 0);
    sampling.stop_tokens = &t->end_token;
    sampling.n_stop_tokens = 1;
    sampling.max_batch = d->max_batch;
    status = tt_generate(d->model, requests, n, &sampling, &completions);
    if (status == TT_OK) {
        s->metrics.rollout_tokens += (double)completions.n_tokens;
        status = tt_rollouts_create(t->ctx, requests, n, &completions, t->end_token, &s->fresh);
    }
    for (i = 0; i < n && status == TT_OK; i++) { status = tt_rollouts_question(&s->fresh, i, tt_prompts_question(&s->prompts, s->groups[i])); }
    tt_completions_free(&completions);
    return status;
}
/* The user's own responses take the place of the last samples of each group. */
static tt_status tti_step_off_policy(tt_trainer *t, tti_step *s) {
    const tt_trainer_desc *d = &t->desc;
    int size = s->fresh.num_generations, i, k;
    int32_t end = (int32_t)t->end_token;
    tt_text text = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    text.ctx = ids.ctx = t->ctx;
    for (i = 0; i < s->fresh.n && status == TT_OK; i++) {
        const tt_prompts *p = &s->prompts;
        int g = s->groups[i / size];
        k = i % size - (size - d->n_off_policy);
        if (k < 0) { continue; }
        text.size = ids.size = 0;
        if (!t->ctx->graph_error) { tt_error_clear(t->ctx); }
        status = d->off_policy(d->off_policy_user, tt_prompts_question(p, g), tt_prompts_answer(p, g), k, &text);
        status = tti_called(t->ctx, status, "off_policy: response", (uint64_t)k);
        if (status != TT_OK || text.size == 0) { continue; }
        status = tt_encode(d->tokenizer, text.data, text.size, TT_SPECIAL_TEXT, &ids);
        if (status == TT_OK) { status = tt_ids_append(&ids, &end, 1); }
        if (ids.size > (size_t)d->grpo.max_completion_length) {
            ids.size = (size_t)d->grpo.max_completion_length;
            s->metrics.n_off_policy_cut++;
        }
        if (status == TT_OK) { status = tt_rollout_off_policy(&s->fresh, i, ids.data, (int)ids.size, t->end_token); }
    }
    tt_text_free(&text);
    tt_ids_free(&ids);
    return status;
}
/* Rewards of all rollouts of the round (guided_only: of those), and a tally of what the student's own do. */
static tt_status tti_step_rewards(tt_trainer *t, tti_step *s, int guided_only) {
    tt_text scratch = TT_INIT;
    tt_status status = TT_OK;
    int i, k;
    scratch.ctx = t->ctx;
    s->fresh.n_rewards = t->n_rewards;
    for (i = 0; i < s->fresh.n && status == TT_OK; i++) {
        tt_rollout *r = &s->fresh.items[i];
        int g = s->groups[r->group];
        tt_reward_input in = TT_INIT;
        tt_outcome outcome;
        if (guided_only && !r->guided) { continue; }
        in.sample = r->sample;
        in.tokens = r->tokens + r->prompt_length;
        in.n_tokens = r->response_length;
        in.stopped = r->stopped;
        status = tt_prompts_input(&s->prompts, g, &scratch, &in);
        for (k = 0; k < t->n_rewards && status == TT_OK; k++) { status = tt_reward_call(t->ctx, &t->rewards[k], &in, &s->errors, &r->rewards[k]); }
        r->reward = r->rewards[0];
        if (guided_only || r->off_policy || status != TT_OK) { continue; }
        status = tt_judge(t->ctx, t->desc.task, &in, r->rewards[0], &s->errors, &outcome);
        if (status == TT_OK) { tt_tally_add(&s->tally, &outcome, r->response_length, r->stopped); }
    }
    tt_text_free(&scratch);
    return status;
}
/* The teacher continues some responses; the reward that each had by itself stays in attempt_reward. */
static tt_status tti_step_teach(tt_trainer *t, tti_step *s) {
    const tt_trainer_desc *d = &t->desc;
    tt_think_metrics m = TT_INIT;
    tt_augment how = TT_INIT;
    tt_status status;
    how.teacher = d->teacher;
    how.tokenizer = d->tokenizer;
    how.end_token = t->end_token;
    how.max_completion_length = d->grpo.max_completion_length;
    how.step = t->step;
    status = tt_think_augment(&s->fresh, &how, &d->think, &m);
    s->metrics.think.pct = m.pct;
    s->metrics.think.n_eligible += m.n_eligible;
    s->metrics.think.n_guided += m.n_guided;
    s->metrics.think.teacher_tokens += m.teacher_tokens;
    s->metrics.think.n_cut += m.n_cut;
    if (m.longest_guided > s->metrics.think.longest_guided) { s->metrics.think.longest_guided = m.longest_guided; }
    return status == TT_OK ? tti_step_rewards(t, s, 1) : status;
}
/* Samples, rewards and feedback for the n groups of a round, into s->fresh. */
static tt_status tti_step_round(tt_trainer *t, tti_step *s, int n) {
    const tt_trainer_desc *d = &t->desc;
    double begin = tt_clock(), sampled;
    tt_request *requests = (tt_request *)tt_alloc(t->ctx, (size_t)n, sizeof *requests);
    tt_status status = requests ? TT_OK : TT_ERR_MEM;
    int k;
    for (k = 0; k < n && status == TT_OK; k++) { requests[k] = s->prompts.requests[s->groups[k]]; }
    if (status == TT_OK) { status = tti_step_sample(t, s, requests, n); }
    if (status == TT_OK && d->n_off_policy > 0) { status = tti_step_off_policy(t, s); }
    if (status == TT_OK) { status = tti_step_rewards(t, s, 0); }
    sampled = tt_clock();
    if (status == TT_OK && d->teacher && tt_think_active(&d->think, t->step)) { status = tti_step_teach(t, s); }
    s->metrics.rollout_s += sampled - begin;
    s->metrics.teacher_s += tt_clock() - sampled;
    tt_free(t->ctx, requests, (size_t)n, sizeof *requests);
    return status;
}
/* Group k of the round becomes group g of the step. */
static void tti_step_take(tt_trainer *t, tti_step *s, int k, int g) {
    int size = s->fresh.num_generations, i;
    char *question = t->rollouts.questions[g];
    for (i = 0; i < size; i++) {
        tt_rollout *to = &t->rollouts.items[g * size + i], was = *to;
        *to = s->fresh.items[k * size + i];
        to->group = g;
        s->fresh.items[k * size + i] = was;
    }
    t->rollouts.questions[g] = s->fresh.questions[k];
    s->fresh.questions[k] = question;
}
/* The groups whose rewards are all equal: they have no gradient. */
static tt_status tti_step_dull(tt_trainer *t, tti_step *s, int *n) {
    tt_grpo_config c = tt_grpo_resolve(&t->desc.grpo);
    int g;
    tt_status status;
    c.kl_in_reward = 0;
    *n = 0;
    status = tt_grpo_rewards(&t->rollouts, &c, t->weights, NULL);
    for (g = 0; g < t->rollouts.n_groups && status == TT_OK; g++) {
        if (tt_group_rewards(&t->rollouts, g).equal) { s->groups[(*n)++] = g; }
    }
    return status;
}
static tt_status tti_step_collect(tt_trainer *t, tti_step *s) {
    int n = s->prompts.n, round, k;
    tt_status status = tti_step_round(t, s, n);
    if (status != TT_OK) { return status; }
    tt_rollouts_free(&t->rollouts);
    t->rollouts = s->fresh;
    memset(&s->fresh, 0, sizeof s->fresh);
    for (round = 1; round <= t->desc.grpo.dynamic_sampling && status == TT_OK; round++) {
        status = tti_step_dull(t, s, &n);
        if (status != TT_OK || n == 0) { break; }
        status = tti_step_redraw(t, s, n, round);
        if (status == TT_OK) { status = tti_step_round(t, s, n); }
        for (k = 0; k < n && status == TT_OK; k++) { tti_step_take(t, s, k, s->groups[k]); }
        s->metrics.n_resampled += n;
        tt_rollouts_free(&s->fresh);
    }
    return status;
}
/* ---- one step: what every rank knows of every response ----
 * Advantages and denominators may be of the whole batch, so each rank computes them from the lengths, flags and rewards of all
 * responses: the board, rollouts without tokens, in the order of one process. Their kinds are a number of taught tokens there. */
typedef struct tti_counts { tt_tally tally; double rollout_tokens, update_tokens, teacher_tokens, n_eligible, n_guided, n_cut, n_off_policy_cut, n_errors, n_resampled; } tti_counts;   /* doubles alone */
enum { TTI_ROW_LENGTH, TTI_ROW_STOPPED, TTI_ROW_GUIDED, TTI_ROW_OFF_POLICY, TTI_ROW_ATTEMPT, TTI_ROW_TAUGHT, TTI_ROW_REWARDS, TTI_N_COUNTS = (int)(sizeof(tti_counts) / sizeof(double)) };
static int tti_kl_in_reward(const tt_trainer *t) { return t->desc.grpo.kl_in_reward && t->desc.grpo.beta != 0; }
static int tti_row_size(const tt_trainer *t) { return TTI_ROW_REWARDS + t->n_rewards + (tti_kl_in_reward(t) ? 2 * t->desc.grpo.max_completion_length : 0); }
static tt_rollouts *tti_board(tt_trainer *t, tti_step *s) { return t->desc.world_size > 1 ? &s->board : &t->rollouts; }

static void tti_row_write(const tt_trainer *t, const tt_rollout *r, double *row) {
    double *logprobs = row + TTI_ROW_REWARDS + t->n_rewards;
    int i, limit = t->desc.grpo.max_completion_length;
    row[TTI_ROW_LENGTH] = r->response_length;
    row[TTI_ROW_STOPPED] = r->stopped;
    row[TTI_ROW_GUIDED] = r->guided;
    row[TTI_ROW_OFF_POLICY] = r->off_policy;
    row[TTI_ROW_ATTEMPT] = (double)r->attempt_reward;
    for (i = 0; i < r->response_length; i++) { row[TTI_ROW_TAUGHT] += !tti_is_student(r, i); }
    for (i = 0; i < t->n_rewards; i++) { row[TTI_ROW_REWARDS + i] = (double)r->rewards[i]; }
    for (i = 0; i < r->response_length && tti_kl_in_reward(t); i++) {
        logprobs[i] = (double)r->old_logprobs[i];
        logprobs[limit + i] = (double)r->ref_logprobs[i];
    }
}
/* kinds: limit tokens of a teacher, then as many of the student. */
static void tti_row_read(const tt_trainer *t, const double *row, unsigned char *kinds, float *logprobs, tt_rollout *r) {
    int i, limit = t->desc.grpo.max_completion_length;
    r->response_length = (int)row[TTI_ROW_LENGTH];
    r->stopped = (int)row[TTI_ROW_STOPPED];
    r->guided = (int)row[TTI_ROW_GUIDED];
    r->off_policy = (int)row[TTI_ROW_OFF_POLICY];
    r->attempt_reward = (float)row[TTI_ROW_ATTEMPT];
    r->kind = kinds + limit - (int)row[TTI_ROW_TAUGHT];
    for (i = 0; i < t->n_rewards; i++) { r->rewards[i] = (float)row[TTI_ROW_REWARDS + i]; }
    if (!logprobs) { return; }
    for (i = 0; i < 2 * limit; i++) { logprobs[i] = (float)row[TTI_ROW_REWARDS + t->n_rewards + i]; }
    r->old_logprobs = logprobs;
    r->ref_logprobs = logprobs + limit;
}
static void tti_counts_get(tti_step *s, tti_counts *c) {
    c->tally = s->tally;
    c->rollout_tokens = s->metrics.rollout_tokens;
    c->update_tokens = s->metrics.update_tokens;
    c->teacher_tokens = s->metrics.think.teacher_tokens;
    c->n_eligible = s->metrics.think.n_eligible;
    c->n_guided = s->metrics.think.n_guided;
    c->n_cut = s->metrics.think.n_cut;
    c->n_off_policy_cut = s->metrics.n_off_policy_cut;
    c->n_errors = s->errors.n;
    c->n_resampled = s->metrics.n_resampled;
}
static void tti_counts_set(tti_step *s, const tti_counts *c) {
    s->tally = c->tally;
    s->metrics.rollout_tokens = c->rollout_tokens;
    s->metrics.update_tokens = c->update_tokens;
    s->metrics.think.teacher_tokens = c->teacher_tokens;
    s->metrics.think.n_eligible = (int)c->n_eligible;
    s->metrics.think.n_guided = (int)c->n_guided;
    s->metrics.think.n_cut = c->n_cut;
    s->metrics.n_off_policy_cut = c->n_off_policy_cut;
    s->errors.n = (int)c->n_errors;
    s->metrics.n_resampled = c->n_resampled;
}
/* values[i] = sum over ranks, in their order. */
static tt_status tti_sum_over_ranks(tt_trainer *t, double *values, int n) {
    int world = t->desc.world_size, rank, i;
    size_t total = (size_t)n * (size_t)world;
    double *all = world > 1 ? (double *)tt_alloc(t->ctx, total, sizeof *all) : NULL;
    tt_status status;
    if (world == 1) { return TT_OK; }
    status = all ? tt_reducer_gather(t->reducer, values, n, all) : TT_ERR_MEM;
    for (i = 0; i < n && status == TT_OK; i++) {
        values[i] = 0;
        for (rank = 0; rank < world; rank++) { values[i] += all[rank * n + i]; }
    }
    tt_free(t->ctx, all, total, sizeof *all);
    return status;
}
static tt_status tti_board_fill(tt_trainer *t, tti_step *s, const double *rows) {
    int size = tti_row_size(t), own = t->rollouts.n, group = t->rollouts.num_generations, limit = t->desc.grpo.max_completion_length, rank, i;
    tt_rollouts *board = &s->board;
    board->ctx = t->ctx;
    board->num_generations = group;
    board->n_rewards = t->n_rewards;
    board->items = (tt_rollout *)tt_alloc(t->ctx, (size_t)own * (size_t)t->desc.world_size, sizeof *board->items);
    if (!board->items) { return TT_ERR_MEM; }
    board->n = own * t->desc.world_size;
    board->n_groups = t->desc.prompts_per_step;
    s->kinds = (unsigned char *)tt_alloc(t->ctx, 2 * (size_t)limit, 1);
    if (tti_kl_in_reward(t)) { s->logprobs = (float *)tt_alloc(t->ctx, 2 * (size_t)limit * (size_t)board->n, sizeof *s->logprobs); }
    if (!s->kinds || (tti_kl_in_reward(t) && !s->logprobs)) { return TT_ERR_MEM; }
    memset(s->kinds, TT_KIND_TEACHER, (size_t)limit);
    memset(s->kinds + limit, TT_KIND_STUDENT, (size_t)limit);
    for (rank = 0; rank < t->desc.world_size; rank++) {
        for (i = 0; i < own; i++) {
            int g = tti_group_place(t, rank, i / group), at = g * group + i % group;
            board->items[at].group = g;
            board->items[at].sample = i % group;
            tti_row_read(t, rows + (size_t)(rank * own + i) * (size_t)size, s->kinds, s->logprobs ? s->logprobs + 2 * (size_t)limit * (size_t)at : NULL, &board->items[at]);
        }
    }
    return TT_OK;
}
static tt_status tti_board_make(tt_trainer *t, tti_step *s) {
    int size = tti_row_size(t), own = t->rollouts.n, i;
    size_t n = (size_t)size * (size_t)own, total = n * (size_t)(t->desc.world_size + 1);
    tti_counts counts;
    double *rows;
    tt_status status;
    if (t->desc.world_size == 1) { return TT_OK; }
    if (total > (size_t)INT_MAX) { return tt_fail(t->ctx, TT_ERR_MEM, "tt_trainer_step: the ranks would exchange %lu values", (unsigned long)total); }
    tti_counts_get(s, &counts);
    status = tti_sum_over_ranks(t, &counts.tally.n, TTI_N_COUNTS);
    if (status != TT_OK) { return status; }
    tti_counts_set(s, &counts);
    rows = (double *)tt_alloc(t->ctx, total, sizeof *rows);
    if (!rows) { return TT_ERR_MEM; }
    for (i = 0; i < own; i++) { tti_row_write(t, &t->rollouts.items[i], rows + (size_t)i * (size_t)size); }
    status = tt_reducer_gather(t->reducer, rows, (int)n, rows + n);
    if (status == TT_OK) { status = tti_board_fill(t, s, rows + n); }
    tt_free(t->ctx, rows, total, sizeof *rows);
    return status;
}
static void tti_board_free(tt_trainer *t, tti_step *s) {
    size_t limit = (size_t)t->desc.grpo.max_completion_length;
    tt_free(t->ctx, s->board.items, (size_t)s->board.n, sizeof *s->board.items);
    tt_free(t->ctx, s->kinds, 2 * limit, 1);
    tt_free(t->ctx, s->logprobs, 2 * limit * (size_t)s->board.n, sizeof *s->logprobs);
}
/* Rewards and advantages of the whole batch; each rank takes those of its own. */
static tt_status tti_step_advantages(tt_trainer *t, tti_step *s) {
    tt_rollouts *all = tti_board(t, s);
    int group = t->rollouts.num_generations, i;
    tt_status status = tt_grpo_advantages(all, &t->desc.grpo, t->weights, &s->metrics.grpo);
    for (i = 0; i < t->rollouts.n && all != &t->rollouts; i++) {
        const tt_rollout *r = &all->items[tti_group_place(t, t->desc.rank, i / group) * group + i % group];
        t->rollouts.items[i].reward = r->reward;
        t->rollouts.items[i].advantage = r->advantage;
    }
    if (status == TT_OK) { tt_think_score(all, &s->metrics.think); }
    return status;
}
/* An error only if no response has a score and functions failed. */
static tt_status tti_step_scored(tt_trainer *t, tti_step *s) {
    const tt_rollouts *all = tti_board(t, s);
    int i, k, scored = s->errors.n == 0;
    for (i = 0; i < all->n; i++) { for (k = 0; k < t->n_rewards; k++) { scored |= !isnan(all->items[i].rewards[k]); } }
    if (scored) { return TT_OK; }
    if (s->errors.status == TT_OK) { return tt_fail(t->ctx, TT_ERR_NUMBER, "tt_trainer_step: the reward functions failed on other ranks, and nobody scored a response"); }
    return tt_fail(t->ctx, s->errors.status, "%s", s->errors.text);
}

/* ---- one step: log-probs, losses, updates ---- */
/* Rollouts [begin, end) of one micro-batch: as many as fit into micro_batch_tokens, at least one. */
static int tti_micro_batch_end(const tt_rollouts *rollouts, int begin, int max_tokens) {
    int end = begin, tokens = 0;
    while (end < rollouts->n) {
        int length = rollouts->items[end].prompt_length + rollouts->items[end].response_length;
        if (end > begin && length > max_tokens - tokens) { break; }
        tokens += length < max_tokens ? length : max_tokens;
        end++;
    }
    return end;
}
/* Ends a graph. Resetting the step would also forget why it failed. */
static tt_status tti_end_graph(tt_context *ctx, tt_status status) {
    tt_step_reset(ctx);
    return status;
}
/* Log-probs of the responses under model, without gradients, into old_logprobs or ref_logprobs. */
static tt_status tti_micro_logprobs(tt_trainer *t, tt_model *model, const int *indices, int n, int as_reference, float *scratch) {
    tt_tensor *logprobs;
    tt_status status;
    int i, at = 0;
    tt_no_grad_begin(t->ctx);
    logprobs = tt_model_logprobs(model, tt_rollouts_batch(t->ctx, &t->rollouts, indices, n), t->desc.grpo.temperature, NULL);
    tt_no_grad_end(t->ctx);
    status = logprobs ? tt_tensor_get(logprobs, scratch) : tt_eval(t->ctx);
    for (i = 0; i < n && status == TT_OK; i++) {
        tt_rollout *r = &t->rollouts.items[indices[i]];
        float **out = as_reference ? &r->ref_logprobs : &r->old_logprobs;
        if (!*out) { *out = (float *)tt_alloc(t->ctx, (size_t)r->response_length, sizeof **out); }
        if (!*out) { status = TT_ERR_MEM; break; }
        memcpy(*out, scratch + at, (size_t)r->response_length * sizeof **out);
        at += r->response_length;
    }
    return tti_end_graph(t->ctx, status);
}
static tt_status tti_all_logprobs(tt_trainer *t, tt_model *model, const int *indices, int as_reference) {
    int begin, end, i;
    tt_status status = TT_OK;
    for (begin = 0; begin < t->rollouts.n && status == TT_OK; begin = end) {
        size_t total = 0;
        float *scratch;
        end = tti_micro_batch_end(&t->rollouts, begin, t->desc.grpo.micro_batch_tokens);
        for (i = begin; i < end; i++) { total += (size_t)t->rollouts.items[i].response_length; }
        scratch = (float *)tt_alloc(t->ctx, total, sizeof *scratch);
        status = scratch ? tti_micro_logprobs(t, model, indices + begin, end - begin, as_reference, scratch) : TT_ERR_MEM;
        tt_free(t->ctx, scratch, total, sizeof *scratch);
    }
    return status;
}
/* Old log-probs wherever a later update or a reward will ask for them, those of the reference likewise. */
static tt_status tti_reference_logprobs(tt_trainer *t, const int *indices) {
    tt_model *reference = t->desc.reference;
    int was = reference == t->desc.model ? tt_model_lora_enable(reference, 0) : 0;
    tt_status status = tti_all_logprobs(t, reference, indices, 1);
    if (reference == t->desc.model) { tt_model_lora_enable(reference, was); }
    return status;
}
static tt_status tti_step_logprobs(tt_trainer *t, const int *indices) {
    const tt_grpo_config *c = &t->desc.grpo;
    int in_reward = c->kl_in_reward && c->beta != 0;
    tt_status status = TT_OK;
    if (c->num_iterations > 1 || c->num_mini_batches > 1 || in_reward) { status = tti_all_logprobs(t, t->desc.model, indices, 0); }
    if (status == TT_OK && (c->beta != 0 || t->desc.measure_kl)) { status = tti_reference_logprobs(t, indices); }
    return status;
}
/* BNPO's mean over micro-batches: one over their number, all ranks together. */
static tt_status tti_bnpo_share(tt_trainer *t, const tt_rollouts *batch, int n_parts, double *share) {
    double n_micro = 0;
    int begin, end, k;
    tt_status status;
    *share = 1;
    if (t->desc.grpo.aggregation != TT_BNPO) { return TT_OK; }
    for (k = 0; k < n_parts; k++) {
        tt_rollouts part = *batch;
        part.n /= n_parts;
        part.items += k * part.n;
        for (begin = 0; begin < part.n; begin = end, n_micro++) { end = tti_micro_batch_end(&part, begin, t->desc.grpo.micro_batch_tokens); }
    }
    status = tti_sum_over_ranks(t, &n_micro, 1);
    *share = 1 / n_micro;
    return status;
}
/* Forward and backward over all micro-batches of a part of an optimizer batch. */
static tt_status tti_part_backward(tt_trainer *t, const tt_rollouts *part, const int *indices, const tt_loss_totals *whole, double share, tt_grpo_metrics *m) {
    const tt_trainer_desc *d = &t->desc;
    tt_loss_batch batch = TT_INIT;
    int begin, end;
    tt_status status = TT_OK;
    for (begin = 0; begin < part->n && status == TT_OK; begin = end) {
        tt_tensor *entropy = NULL, *logprobs, *loss;
        end = tti_micro_batch_end(part, begin, d->grpo.micro_batch_tokens);
        batch.rollouts = part;
        batch.indices = indices + begin;
        batch.n = end - begin;
        batch.totals = whole;
        logprobs = tt_model_logprobs(d->model, tt_rollouts_batch(t->ctx, part, batch.indices, batch.n), d->grpo.temperature, &entropy);
        loss = tt_grpo_loss(t->ctx, logprobs, entropy, &batch, &d->grpo, m);
        if (share != 1) { loss = tt_scale(t->ctx, loss, (float)share); }
        status = tti_end_graph(t->ctx, tt_backward(t->ctx, loss));
    }
    return status;
}
/* What the losses of parts measure: sums, whose denominators are those of the whole, and maxima. */
#define TTI_MEASURE(field) offsetof(tt_grpo_metrics, field)
static const size_t tti_measures[] = {
    TTI_MEASURE(loss), TTI_MEASURE(entropy), TTI_MEASURE(kl), TTI_MEASURE(ppo_kl), TTI_MEASURE(clip_low), TTI_MEASURE(clip_high), TTI_MEASURE(clip_dual),
    TTI_MEASURE(aas_fallback_share), TTI_MEASURE(aas_factor_mean), TTI_MEASURE(mismatch_mean), TTI_MEASURE(n_tokens), TTI_MEASURE(n_guided_tokens),
    TTI_MEASURE(aas_factor_max), TTI_MEASURE(sampling_logp_difference_max), TTI_MEASURE(mismatch_deviation_max)
};
enum { TTI_N_MEASURES = (int)(sizeof tti_measures / sizeof *tti_measures), TTI_N_SUMS = TTI_N_MEASURES - 3 };
static double *tti_measure_at(tt_grpo_metrics *m, int k) { return (double *)(void *)((char *)m + tti_measures[k]); }
/* Adds up n_parts rows of measures in their order, so that the sums too depend on the parts alone. */
static void tti_measures_add(tt_grpo_metrics *m, const double *rows, int n_parts) {
    int i, k;
    for (k = 0; k < TTI_N_MEASURES; k++) {
        double *to = tti_measure_at(m, k), sum = 0;
        for (i = 0; i < n_parts; i++) {
            double x = rows[i * TTI_N_MEASURES + k];
            sum += x;
            if (k >= TTI_N_SUMS && x > *to) { *to = x; }
        }
        if (k < TTI_N_SUMS) { *to += sum; }
    }
}
/* The gradients of an optimizer batch, of which batch is this rank's share; rows receives the measures of all its parts. */
static tt_status tti_step_gradients(tt_trainer *t, const tt_rollouts *batch, const tt_rollouts *whole, const int *indices, double *rows) {
    const tt_reducer_desc *d = tt_reducer_desc_get(t->reducer);
    tt_grpo_config c = tt_grpo_resolve(&t->desc.grpo);
    tt_loss_totals totals = tt_grpo_totals(whole, &c);
    int own = d->n_parts / d->world_size, k, i;
    double *mine = rows + (size_t)d->n_parts * TTI_N_MEASURES, share;
    tt_rollouts part = *batch;
    tt_status status = tti_bnpo_share(t, batch, own, &share);
    part.n /= own;
    for (k = 0; k < own && status == TT_OK; k++) {
        tt_grpo_metrics m = TT_INIT;
        part.items = batch->items + k * part.n;
        status = tti_part_backward(t, &part, indices, &totals, share, &m);
        if (status == TT_OK) { status = tt_reducer_add(t->reducer); }
        for (i = 0; i < TTI_N_MEASURES; i++) { mine[k * TTI_N_MEASURES + i] = *tti_measure_at(&m, i); }
    }
    if (status == TT_OK) { status = tt_reducer_sum(t->reducer); }
    return status == TT_OK ? tt_reducer_gather(t->reducer, mine, own * TTI_N_MEASURES, rows) : status;
}
/* Gradients, then one update. */
static tt_status tti_step_update(tt_trainer *t, const tt_rollouts *batch, const tt_rollouts *whole, const int *indices, tt_step_metrics *m) {
    const tt_reducer_desc *d = tt_reducer_desc_get(t->reducer);
    size_t n = (size_t)(d->n_parts + d->n_parts / d->world_size) * TTI_N_MEASURES;
    double *rows = (double *)tt_alloc(t->ctx, n, sizeof *rows);
    tt_optimizer_stats stats;
    tt_status status = rows ? tti_step_gradients(t, batch, whole, indices, rows) : TT_ERR_MEM;
    if (status == TT_OK) { tti_measures_add(&m->grpo, rows, d->n_parts); }
    tt_free(t->ctx, rows, n, sizeof *rows);
    m->learning_rate = (double)tt_learning_rate(&t->desc.schedule, t->step);
    if (status == TT_OK) { status = tt_optimizer_step(t->optimizer, (float)m->learning_rate, &stats); }
    if (status != TT_OK) { return status; }
    m->grad_norm = stats.grad_norm;
    m->update_skipped += stats.skipped;
    return TT_OK;
}
/* Means over mini-batches of what each of them has as its own mean. */
static void tti_metrics_divide(tt_grpo_metrics *m, double n) {
    double *means[10];
    int i, count = 0;
    means[count++] = &m->loss;
    means[count++] = &m->entropy;
    means[count++] = &m->kl;
    means[count++] = &m->ppo_kl;
    means[count++] = &m->clip_low;
    means[count++] = &m->clip_high;
    means[count++] = &m->clip_dual;
    means[count++] = &m->aas_fallback_share;
    means[count++] = &m->aas_factor_mean;
    means[count++] = &m->mismatch_mean;
    for (i = 0; i < count; i++) { *means[i] /= n; }
}
static tt_status tti_step_learn(tt_trainer *t, tti_step *s, const int *indices) {
    const tt_grpo_config *c = &t->desc.grpo;
    tt_step_metrics *m = &s->metrics;
    tt_grpo_metrics start = m->grpo;      /* each pass starts from the advantages' metrics: the last one is reported */
    tt_rollouts part = t->rollouts, whole = *tti_board(t, s);
    int pass, k;
    tt_status status = TT_OK;
    part.n_groups /= c->num_mini_batches;
    part.n = part.n_groups * part.num_generations;
    whole.n /= c->num_mini_batches;
    for (pass = 0; pass < c->num_iterations && status == TT_OK; pass++) {
        m->grpo = start;
        for (k = 0; k < c->num_mini_batches && status == TT_OK; k++) {
            part.items = t->rollouts.items + (size_t)k * (size_t)part.n;
            whole.items = tti_board(t, s)->items + (size_t)k * (size_t)whole.n;
            status = tti_step_update(t, &part, &whole, indices, m);
        }
        tti_metrics_divide(&m->grpo, c->num_mini_batches);
    }
    return status;
}
static tt_status tti_trainer_run(tt_trainer *t, tti_step *s) {
    tt_step_metrics *m = &s->metrics;
    double begin = tt_clock();
    int *indices = NULL, n = 0, i;
    tt_status status;
    tt_model_zero_grad(t->desc.model);
    t->reducer->n_added = 0;          /* of a step that failed */
    status = tti_step_prompts(t, s);
    if (status == TT_OK) { status = tti_step_collect(t, s); }
    if (status == TT_OK) {
        n = t->rollouts.n;
        indices = (int *)tt_alloc(t->ctx, (size_t)n, sizeof *indices);
        status = indices ? TT_OK : TT_ERR_MEM;
    }
    for (i = 0; indices && i < n; i++) {
        indices[i] = i;
        m->update_tokens += (t->rollouts.items[i].prompt_length + t->rollouts.items[i].response_length) * t->desc.grpo.num_iterations;
    }
    if (status == TT_OK) { status = tti_step_logprobs(t, indices); }
    if (status == TT_OK) { status = tti_board_make(t, s); }
    if (status == TT_OK) { status = tti_step_scored(t, s); }
    if (status == TT_OK) { status = tti_step_advantages(t, s); }
    if (status == TT_OK) { status = tti_step_learn(t, s, indices); }
    tt_free(t->ctx, indices, (size_t)n, sizeof *indices);
    m->step_s = tt_clock() - begin;
    m->update_s = m->step_s - m->rollout_s - m->teacher_s;
    return status;
}
static void tti_step_report(tt_trainer *t, tti_step *s) {
    tt_step_metrics *m = &s->metrics;
    tt_rates own = tt_tally_rates(&s->tally);
    int i;
    m->step = t->step;
    m->mean_length = own.mean_length;
    m->clipped_ratio = 1 - own.stopped_rate;
    m->reflection_rate = own.reflection_rate;
    m->correction_rate = own.correction_rate;
    m->spoil_rate = own.spoil_rate;
    memcpy(m->behaviour, own.behaviour, sizeof m->behaviour);
    m->reward_errors = s->errors.n;
    t->num_tokens += m->rollout_tokens + m->think.teacher_tokens;
    m->num_tokens = t->num_tokens;
    m->rollout_tokens_per_s = tti_ratio(m->rollout_tokens, m->rollout_s);
    m->teacher_tokens_per_s = tti_ratio(m->think.teacher_tokens, m->teacher_s);
    m->update_tokens_per_s = tti_ratio(m->update_tokens, m->update_s);
    m->n_rewards = t->n_rewards;
    for (i = 0; i < t->n_rewards; i++) { m->reward_names[i] = t->rewards[i].name ? t->rewards[i].name : "task"; }
}
/* Counts the steps in a row that were in trouble; the patience's last one stops the run. */
static tt_status tti_step_watch(tt_trainer *t, const tt_step_metrics *m) {
    static const char *const what[TTI_N_TROUBLES] = {"a gradient or loss that is not finite", "a reward that has collapsed", "an entropy that has collapsed"};
    int bad[TTI_N_TROUBLES], k;
    bad[TTI_TROUBLE_NUMBER] = m->update_skipped > 0 || !isfinite(m->grpo.loss);
    bad[TTI_TROUBLE_REWARD] = m->grpo.reward <= (double)t->desc.abort_reward;
    bad[TTI_TROUBLE_ENTROPY] = m->grpo.entropy < (double)t->desc.abort_entropy;
    for (k = 0; k < TTI_N_TROUBLES; k++) { t->troubles[k] = bad[k] ? t->troubles[k] + 1 : 0; }
    for (k = 0; k < TTI_N_TROUBLES; k++) {
        int steps = t->troubles[k], patience = t->desc.abort_patience == 0 && k == TTI_TROUBLE_NUMBER ? TT_MAX_SKIPPED : t->desc.abort_patience;
        if (patience <= 0 || steps < patience) { continue; }
        t->troubles[k] = 0;
        return tt_fail(t->ctx, TT_ERR_STOP, "tt_trainer_step: stopped after step %d: %s, %d steps in a row (loss %g, reward %g, entropy %g, grad_norm %g)",
                       m->step, what[k], steps, m->grpo.loss, m->grpo.reward, m->grpo.entropy, m->grad_norm);
    }
    return TT_OK;
}
TT_API tt_status tt_trainer_step(tt_trainer *t, tt_step_metrics *metrics) {
    tti_step s;
    tt_status status;
    if (t->stepping) {
        return tt_fail(t->ctx, TT_ERR_ARG, "tt_trainer_step: called by a callback of this trainer's own step");
    }
    memset(&s, 0, sizeof s);
    s.prompts.ctx = t->ctx;
    t->stepping = 1;
    status = tti_trainer_run(t, &s);
    t->stepping = 0;
    if (s.groups) { tt_free(t->ctx, s.groups, (size_t)s.prompts.n, sizeof *s.groups); }
    tt_prompts_free(&s.prompts);
    tt_rollouts_free(&s.fresh);
    tti_board_free(t, &s);
    if (status != TT_OK) { return tti_end_graph(t->ctx, status); }
    tti_step_report(t, &s);
    t->step++;
    if (metrics) { *metrics = s.metrics; }
    return tti_step_watch(t, &s.metrics);
}

/* Beside weights and moments only counters are kept; the settings that steer the random streams are
 * written too, so that a run is not continued under others. The seed is text: 64 bits do not fit a JSON number. */
TT_API tt_status tt_trainer_save(tt_trainer *t, const char *path) {
    tt_text json = TT_INIT;
    tt_status status;
    json.ctx = t->ctx;
    status = tt_text_format(&json, "{\"step\":%d,\"num_tokens\":%r,\"seed\":\"%016llx\",\"prompts_per_step\":%d,\"num_generations\":%d,\"troubles\":[%d,%d,%d]}",
                            t->step, t->num_tokens, (unsigned long long)t->desc.seed, t->desc.prompts_per_step, t->desc.grpo.num_generations,
                            t->troubles[0], t->troubles[1], t->troubles[2]);
    if (status == TT_OK) { status = tt_optimizer_save(t->optimizer, path, json.data, t->desc.also, t->desc.n_also); }
    tt_text_free(&json);
    return tti_tried(t->ctx, "tt_trainer_save", status);
}
static tt_status tti_trainer_restore(tt_trainer *t, const char *path, const tt_json *state) {
    char seed[32];
    const tt_json *troubles = tt_json_get(state, "troubles"), *trouble = troubles ? troubles->child : NULL;
    int prompts = tt_json_int(state, "prompts_per_step", 0), samples = tt_json_int(state, "num_generations", 0), step = tt_json_int(state, "step", -1), k;
    double num_tokens = tt_json_number(state, "num_tokens", -1);
    uint64_t counts[TTI_N_TROUBLES] = {0};
    snprintf(seed, sizeof seed, "%016llx", (unsigned long long)t->desc.seed);
    if (strcmp(seed, tt_json_text(state, "seed", "")) != 0) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_trainer_load: %s has seed %s, the trainer %s", path, tt_json_text(state, "seed", "none"), seed);
    }
    if (prompts != t->desc.prompts_per_step || samples != t->desc.grpo.num_generations) {
        return tt_fail(t->ctx, TT_ERR_FILE, "tt_trainer_load: %s has prompts_per_step %d and num_generations %d, the trainer %d and %d",
                       path, prompts, samples, t->desc.prompts_per_step, t->desc.grpo.num_generations);
    }
    for (k = 0; k < TTI_N_TROUBLES && trouble; k++, trouble = trouble->next) {
        if (!tti_json_whole(trouble, INT_MAX, &counts[k])) { step = -1; }
    }
    if (step < 0 || !(num_tokens >= 0)) { return tt_fail(t->ctx, TT_ERR_FILE, "tt_trainer_load: %s: expected step and troubles, whole numbers, and num_tokens >= 0", path); }
    t->step = step;
    t->num_tokens = num_tokens;
    for (k = 0; k < TTI_N_TROUBLES; k++) { t->troubles[k] = (int)counts[k]; }
    return TT_OK;
}
static tt_status tti_trainer_load(tt_trainer *t, const char *path) {
    tt_trainer was = *t;
    tt_text text = TT_INIT;
    tt_json *state = NULL;
    tt_status status;
    text.ctx = t->ctx;
    TTI_TRY(tt_optimizer_peek(t->optimizer, path, &text));
    state = tt_json_parse(t->ctx, text.data ? text.data : "", text.size);
    TTI_TRY(state ? tti_trainer_restore(t, path, state) : tti_file_fail(t->ctx, path, "state: "));
    TTI_TRY(tt_optimizer_load(t->optimizer, path, NULL, t->desc.also, t->desc.n_also));
done:
    if (status != TT_OK) { *t = was; }
    tt_json_free(t->ctx, state);
    tt_text_free(&text);
    return status;
}
TT_API tt_status tt_trainer_load(tt_trainer *t, const char *path) {
    return tti_tried(t->ctx, "tt_trainer_load", tti_trainer_load(t, path));
}

/* ---- metrics and evaluation ---- */
typedef struct tti_metric { const char *name; size_t at; } tti_metric;      /* a double of tt_step_metrics */
#define TTI_METRIC(name, field) {name, offsetof(tt_step_metrics, field)}
static const tti_metric tti_metrics[] = {
    TTI_METRIC("reward", grpo.reward), TTI_METRIC("reward_std", grpo.reward_std), TTI_METRIC("frac_reward_zero_std", grpo.frac_reward_zero_std),
    TTI_METRIC("completions/mean_length", mean_length), TTI_METRIC("completions/clipped_ratio", clipped_ratio),
    TTI_METRIC("loss", grpo.loss), TTI_METRIC("entropy", grpo.entropy), TTI_METRIC("kl", grpo.kl), TTI_METRIC("ppo_kl", grpo.ppo_kl),
    TTI_METRIC("clip_ratio/low_mean", grpo.clip_low), TTI_METRIC("clip_ratio/high_mean", grpo.clip_high), TTI_METRIC("clip_ratio/dual_mean", grpo.clip_dual),
   
    TTI_METRIC("sampling/sampling_logp_difference/max", grpo.sampling_logp_difference_max),
    TTI_METRIC("sampling/importance_sampling_ratio/mean", grpo.mismatch_mean), TTI_METRIC("sampling/importance_sampling_ratio/max_deviation", grpo.mismatch_deviation_max),
    TTI_METRIC("rewards/overlong/mean", grpo.overlong), TTI_METRIC("rewards/kl/mean", grpo.reward_kl), TTI_METRIC("n_unscored", grpo.n_unscored),
    TTI_METRIC("reward_errors", reward_errors), TTI_METRIC("n_resampled", n_resampled), TTI_METRIC("off_policy/cut", n_off_policy_cut), TTI_METRIC("update_skipped", update_skipped),
    TTI_METRIC("rollout_tokens", rollout_tokens), TTI_METRIC("think/teacher_tokens", think.teacher_tokens),
    TTI_METRIC("grad_norm", grad_norm), TTI_METRIC("learning_rate", learning_rate), TTI_METRIC("num_tokens", num_tokens),
    TTI_METRIC("think/pct", think.pct), TTI_METRIC("think/guided_share", think.guided_share), TTI_METRIC("think/teacher_accuracy", think.teacher_accuracy),
    TTI_METRIC("think/rescue_rate", think.rescue_rate), TTI_METRIC("think/spoil_rate", think.spoil_rate),
    TTI_METRIC("think/guided_reward", think.guided_reward), TTI_METRIC("think/own_reward", think.own_reward), TTI_METRIC("think/cut", think.n_cut),
    TTI_METRIC("think/reflection_rate", reflection_rate), TTI_METRIC("think/correction_rate", correction_rate),
    TTI_METRIC("think/own_spoil_rate", spoil_rate),
    TTI_METRIC("think/self_agreement", behaviour[TT_SELF_AGREEMENT]), TTI_METRIC("think/self_conflict", behaviour[TT_SELF_CONFLICT]),
    TTI_METRIC("think/self_consultation", behaviour[TT_SELF_CONSULTATION]), TTI_METRIC("think/self_critique", behaviour[TT_SELF_CRITIQUE]),
    TTI_METRIC("think/aas_fallback_share", grpo.aas_fallback_share), TTI_METRIC("think/aas_factor_mean", grpo.aas_factor_mean),
    TTI_METRIC("think/aas_factor_max", grpo.aas_factor_max)
};
static const tti_metric tti_timings[] = {
    TTI_METRIC("rollout_s", rollout_s), TTI_METRIC("teacher_s", teacher_s), TTI_METRIC("update_s", update_s), TTI_METRIC("step_time", step_s),
    TTI_METRIC("rollout_tokens_per_s", rollout_tokens_per_s), TTI_METRIC("teacher_tokens_per_s", teacher_tokens_per_s), TTI_METRIC("update_tokens_per_s", update_tokens_per_s)
};
static tt_status tti_metrics_append(tt_text *out, const tt_step_metrics *m, const tti_metric *list, size_t n) {
    tt_status status = TT_OK;
    size_t i;
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tt_text_format(out, ",\"%s\":", list[i].name);
        if (status == TT_OK) { status = tt_text_format(out, "%r", *(const double *)(const void *)((const char *)m + list[i].at)); }
    }
    return status;
}
/* "rewards/<name>/mean": */
static tt_status tti_metrics_name(tt_text *out, const char *reward) {
    tt_text name = TT_INIT;
    tt_status status;
    name.ctx = out->ctx;
    status = tt_text_format(&name, "rewards/%s/mean", reward);
    if (status == TT_OK) { status = tt_text_json(out, name.data, name.size); }
    if (status == TT_OK) { status = tt_text_append(out, ":", 1); }
    tt_text_free(&name);
    return status;
}
TT_API tt_status tt_metrics_json(const tt_step_metrics *m, tt_text *out) {
    tt_status status = tt_text_format(out, "{\"step\":%d,\"think/n_guided\":%d,\"think/n_eligible\":%d", m->step, m->think.n_guided, m->think.n_eligible);
    int k;
    if (status == TT_OK) { status = tti_metrics_append(out, m, tti_metrics, sizeof tti_metrics / sizeof *tti_metrics); }
    for (k = 0; k < m->n_rewards && status == TT_OK; k++) {
        status = tt_text_append(out, ",", 1);
        if (status == TT_OK) { status = tti_metrics_name(out, m->reward_names[k]); }
        if (status == TT_OK) { status = tt_text_format(out, "%r", m->grpo.rewards[k]); }
    }
    if (status == TT_OK && m->step_s > 0) { status = tti_metrics_append(out, m, tti_timings, sizeof tti_timings / sizeof *tti_timings); }
    return status == TT_OK ? tt_text_append(out, "}", 1) : status;
}


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
 *     FMA(a, b, c)        a b + c, rounded once (in the portable set twice)
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
TTI_INLINE float32x4_t TTI_K(quad)(const float *p, size_t step, size_t last) {
    (void)step;
    (void)last;
    return vld1q_f32(p);
}

TTI_INLINE void TTI_K(turn)(float32x4_t v[4]) {
    float32x4x2_t t0 = vtrnq_f32(v[0], v[1]), t1 = vtrnq_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(t0.val[0]), vget_low_f32(t1.val[0]));
    v[1] = vcombine_f32(vget_low_f32(t0.val[1]), vget_low_f32(t1.val[1]));
    v[2] = vcombine_f32(vget_high_f32(t0.val[0]), vget_high_f32(t1.val[0]));
    v[3] = vcombine_f32(vget_high_f32(t0.val[1]), vget_high_f32(t1.val[1]));
}
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
    const float *k = a->k + (u->key_row + key0) * kv_stride;
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
    g.b = tti_factor_of(a->v + (u->key_row + key0) * kv_stride + u->kv_head * dim, 1, kv_stride);
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
    from += (u->key_row + key0) * kv_stride + u->kv_head * dim * lanes;
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
