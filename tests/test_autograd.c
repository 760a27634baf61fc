/* Chapter 4: every op's gradient against central differences on odd shapes, for every kernel set that this
 * CPU runs. Each comparison is itself checked: the same gradient made 3 % wrong must fail it. */
#include "../thinktuning.h"
#include "tt_test.h"

#define MAX_VALUES 4096

typedef tt_tensor *(*build_fn)(tt_context *ctx, tt_tensor **in);
typedef struct op_case {
    const char *name;
    build_fn build;
    int n_in;
    struct { int ndim, shape[4]; } in[3];
    float low, high;               /* of the inputs' values */
} op_case;

static float *random_values(uint64_t stream, size_t n, float low, float high) {
    float *values = (float *)malloc(n * sizeof *values);
    tt_rng rng = {11, 0, 0};
    size_t i;
    rng.stream = stream;
    for (i = 0; i < n; i++) values[i] = low + (high - low) * (float)tt_rng_uniform(&rng);
    return values;
}

/* sum(out * weights), the weights random but fixed; value in double for the differences. */
static tt_tensor *weighted(tt_context *ctx, tt_tensor *out, double *value) {
    float *weights, *host;
    tt_tensor *w;
    size_t i;
    if (!out) return NULL;
    weights = random_values(99, out->size, 0.5f, 1.5f);
    host = (float *)malloc(out->size * sizeof *host);
    for (i = 0; i < out->size; i += 2) weights[i] = -weights[i];
    w = tt_constant(ctx, out->ndim, out->shape, weights);
    tt_tensor_get(out, host);
    for (*value = 0, i = 0; i < out->size; i++) *value += (double)host[i] * (double)weights[i];
    free(weights);
    free(host);
    return tt_sum(ctx, tt_mul(ctx, out, w));
}

/* Worst |analytic - numeric| / (largest numeric of that input), with the analytic gradients times factor. */
static double worst_error(tt_context *ctx, const op_case *c, double factor) {
    float *values[3], *grads[3];
    tt_tensor *in[3];
    double value, worst = 0;
    const float h = 4e-3f;
    size_t i, size[3];
    int k, j;
    for (k = 0; k < c->n_in; k++) {
        size[k] = 1;
        for (j = 0; j < c->in[k].ndim; j++) size[k] *= (size_t)c->in[k].shape[j];
        values[k] = random_values((uint64_t)k, size[k], c->low, c->high);
        grads[k] = (float *)malloc(size[k] * sizeof(float));
        in[k] = tt_constant(ctx, c->in[k].ndim, c->in[k].shape, values[k]);
        if (in[k]) in[k]->requires_grad = 1;
    }
    tt_backward(ctx, weighted(ctx, c->build(ctx, in), &value));
    if (tt_eval(ctx) != TT_OK) { printf("  %s: %s\n", c->name, tt_error(ctx)); worst = 1e9; }
    for (k = 0; k < c->n_in && worst < 1e8; k++) tt_tensor_get_grad(in[k], grads[k]);
    tt_step_reset(ctx);
    tt_no_grad_begin(ctx);
    for (k = 0; k < c->n_in && worst < 1e8; k++) {
        double largest = 1e-3, error = 0;
        size_t step = size[k] / 60 + 1;
        for (i = 0; i < size[k]; i += step) {
            double side[2], numeric;
            float kept = values[k][i], moved[2];
            for (j = 0; j < 2; j++) {
                int m;
                moved[j] = values[k][i] = j ? kept + h : kept - h;
                for (m = 0; m < c->n_in; m++) in[m] = tt_constant(ctx, c->in[m].ndim, c->in[m].shape, values[m]);
                weighted(ctx, c->build(ctx, in), &side[j]);
                tt_step_reset(ctx);
            }
            values[k][i] = kept;
            numeric = (side[1] - side[0]) / ((double)moved[1] - (double)moved[0]);
            if (fabs(numeric) > largest) largest = fabs(numeric);
            if (fabs(numeric - factor * (double)grads[k][i]) > error) error = fabs(numeric - factor * (double)grads[k][i]);
        }
        if (error / largest > worst) worst = error / largest;
    }
    tt_no_grad_end(ctx);
    for (k = 0; k < c->n_in; k++) { free(values[k]); free(grads[k]); }
    return worst;
}

static tt_tensor *op_add(tt_context *x, tt_tensor **i) { return tt_add(x, i[0], i[1]); }
static tt_tensor *op_sub(tt_context *x, tt_tensor **i) { return tt_sub(x, i[0], i[1]); }
static tt_tensor *op_mul(tt_context *x, tt_tensor **i) { return tt_mul(x, i[0], i[1]); }
static tt_tensor *op_div(tt_context *x, tt_tensor **i) { return tt_div(x, i[0], i[1]); }
static tt_tensor *op_min(tt_context *x, tt_tensor **i) { return tt_minimum(x, i[0], i[1]); }
static tt_tensor *op_max(tt_context *x, tt_tensor **i) { return tt_maximum(x, i[0], i[1]); }
static tt_tensor *op_where(tt_context *x, tt_tensor **i) { return tt_where(x, tt_less(x, i[0], tt_scalar(x, 0.9f)), i[1], i[2]); }
static tt_tensor *op_neg(tt_context *x, tt_tensor **i) { return tt_neg(x, i[0]); }
static tt_tensor *op_exp(tt_context *x, tt_tensor **i) { return tt_exp(x, i[0]); }
static tt_tensor *op_log(tt_context *x, tt_tensor **i) { return tt_log(x, i[0]); }
static tt_tensor *op_tanh(tt_context *x, tt_tensor **i) { return tt_tanh(x, i[0]); }
static tt_tensor *op_clamp(tt_context *x, tt_tensor **i) { return tt_clamp(x, i[0], -5.0f, 5.0f); }
static tt_tensor *op_scale(tt_context *x, tt_tensor **i) { return tt_scale(x, i[0], -2.5f); }
static tt_tensor *op_sum(tt_context *x, tt_tensor **i) { return tt_sum(x, i[0]); }
static tt_tensor *op_mean(tt_context *x, tt_tensor **i) { return tt_mean(x, i[0]); }
static tt_tensor *op_sum_axis(tt_context *x, tt_tensor **i) { return tt_sum_axis(x, i[0], 1); }
static tt_tensor *op_mean_axis(tt_context *x, tt_tensor **i) { return tt_mean_axis(x, i[0], 0); }
static tt_tensor *op_view(tt_context *x, tt_tensor **i) { int s[2] = {5, 3}; return tt_mul(x, tt_view(x, i[0], 2, s), tt_view(x, i[0], 2, s)); }
static tt_tensor *op_columns(tt_context *x, tt_tensor **i) { return tt_mul(x, tt_columns(x, i[0], 1, 3), tt_columns(x, i[0], 4, 3)); }
static tt_tensor *op_gather(tt_context *x, tt_tensor **i) { int32_t r[5] = {3, 0, 3, 1, 3}; return tt_gather_rows(x, i[0], r, 5); }
static tt_tensor *op_linear(tt_context *x, tt_tensor **i) { return tt_linear(x, i[0], i[1], i[2]); }
static tt_tensor *op_linear0(tt_context *x, tt_tensor **i) { return tt_linear(x, i[0], i[1], NULL); }
static tt_tensor *op_matmul(tt_context *x, tt_tensor **i) { return tt_matmul(x, i[0], i[1], i[2]); }
static tt_tensor *op_embedding(tt_context *x, tt_tensor **i) { int32_t r[7] = {0, 8, 3, 8, 8, 1, 0}; return tt_embedding(x, i[0], r, 7); }
static tt_tensor *op_rmsnorm(tt_context *x, tt_tensor **i) { return tt_rmsnorm(x, i[0], i[1], 1e-5f); }
static tt_tensor *op_layernorm(tt_context *x, tt_tensor **i) { return tt_layernorm(x, i[0], i[1], i[2], 1e-5f); }
static tt_tensor *op_swiglu(tt_context *x, tt_tensor **i) { return tt_swiglu(x, i[0], i[1]); }
static tt_tensor *op_gelu_tanh(tt_context *x, tt_tensor **i) { return tt_gelu(x, i[0], 1); }
static tt_tensor *op_gelu_erf(tt_context *x, tt_tensor **i) { return tt_gelu(x, i[0], 0); }
static const tt_batch *ragged(tt_context *ctx, int long_one) {
    static const int32_t short_offsets[4] = {0, 1, 8, 11}, long_offsets[3] = {0, 71, 74};
    static const int32_t tokens[74];
    tt_batch_desc desc = TT_INIT;
    desc.n_sequences = long_one ? 2 : 3;
    desc.offsets = long_one ? long_offsets : short_offsets;
    desc.tokens = tokens;
    return tt_batch_create(ctx, &desc);
}
#ifndef TT_TEST_CUDA
/* Four sequences in 11 rows: one that three go on from, the last by way of the third; or 74 rows, of which two
 * sequences see the first 70, which is more than a block of keys. */
static const tt_batch *tree(tt_context *ctx, int long_one) {
    static const int32_t short_offsets[5] = {0, 3, 4, 9, 11}, long_offsets[4] = {0, 70, 71, 74};
    static const int32_t parents[4] = {-1, 0, 0, 2}, tokens[74];
    tt_batch_desc desc = TT_INIT;
    desc.n_sequences = long_one ? 3 : 4;
    desc.offsets = long_one ? long_offsets : short_offsets;
    desc.tokens = tokens;
    desc.parents = parents;
    return tt_batch_create(ctx, &desc);
}
#endif

static tt_tensor *op_rope(tt_context *x, tt_tensor **i) {
    float *angles = random_values(7, 16 * 3, -3, 3), *sines = random_values(7, 16 * 3, -3, 3);
    int s[2] = {16, 3}, k;
    tt_tensor *c, *n;
    for (k = 0; k < 48; k++) { angles[k] = (float)cos((double)angles[k]); sines[k] = (float)sin((double)sines[k]); }
    c = tt_constant(x, 2, s, angles);
    n = tt_constant(x, 2, s, sines);
    free(angles);
    free(sines);
    return tt_rope(x, i[0], c, n, ragged(x, 0), 6);
}
static tt_tensor *attend(tt_context *x, tt_tensor **i, const tt_batch *batch, int heads, int kv_heads, int dim) {
    tt_attention_desc d = TT_INIT;
    d.n_heads = heads;
    d.n_kv_heads = kv_heads;
    d.head_dim = dim;
    return tt_attention(x, i[0], i[1], i[2], batch, &d);
}
static tt_tensor *op_attention(tt_context *x, tt_tensor **i) { return attend(x, i, ragged(x, 0), 4, 2, 5); }
static tt_tensor *op_attention_long(tt_context *x, tt_tensor **i) { return attend(x, i, ragged(x, 1), 2, 1, 8); }
#ifndef TT_TEST_CUDA
static tt_tensor *op_attention_tree(tt_context *x, tt_tensor **i) { return attend(x, i, tree(x, 0), 4, 2, 5); }
static tt_tensor *op_attention_tree_long(tt_context *x, tt_tensor **i) { return attend(x, i, tree(x, 1), 2, 1, 8); }
#endif
static const int32_t *some_targets(int n, int vocab) {
    static int32_t targets[64];
    int k;
    for (k = 0; k < n; k++) targets[k] = (int32_t)((k * 7 + 3) % vocab);
    return targets;
}
static tt_tensor *op_logprobs(tt_context *x, tt_tensor **i) { return tt_token_logprobs(x, i[0], i[1], some_targets(5, 37), 0.7f, NULL); }
static tt_tensor *op_entropy(tt_context *x, tt_tensor **i) {
    tt_tensor *h, *l = tt_token_logprobs(x, i[0], i[1], some_targets(5, 37), 1.3f, &h);
    return tt_mul(x, l, h);
}
static tt_tensor *segment(tt_context *x, void *user, tt_tensor *const *i, int n) {
    (void)user;
    (void)n;
    return tt_mul(x, tt_tanh(x, tt_linear(x, i[0], i[1], NULL)), tt_exp(x, tt_linear(x, i[0], i[1], NULL)));
}
static tt_tensor *op_checkpoint(tt_context *x, tt_tensor **i) {
    tt_tensor *y = tt_recompute(x, segment, NULL, i, 2), *in[2];
    in[0] = y;
    in[1] = i[1];
    return tt_add(x, tt_recompute(x, segment, NULL, in, 2), y);
}
static tt_tensor *op_reuse(tt_context *x, tt_tensor **i) {   /* one tensor used by several ops */
    tt_tensor *y = tt_mul(x, i[0], i[0]);
    return tt_add(x, tt_mul(x, y, i[0]), tt_div(x, i[0], tt_add(x, y, tt_scalar(x, 1.0f))));
}

static const op_case cases[] = {
    {"add",       op_add,       2, {{3, {3, 1, 5}}, {2, {4, 1}}}, -1, 1},
    {"sub",       op_sub,       2, {{2, {3, 5}}, {0, {0}}}, -1, 1},
    {"mul",       op_mul,       2, {{4, {2, 3, 1, 5}}, {3, {1, 7, 1}}}, -1, 1},
    {"div",       op_div,       2, {{1, {5}}, {2, {3, 5}}}, 0.6f, 2},
    {"minimum",   op_min,       2, {{2, {5, 7}}, {1, {7}}}, -1, 1},
    {"maximum",   op_max,       2, {{2, {5, 7}}, {2, {5, 1}}}, -1, 1},
    {"where",     op_where,     3, {{2, {5, 7}}, {2, {5, 7}}, {1, {7}}}, 0, 0.8f},
    {"neg",       op_neg,       1, {{1, {13}}}, -1, 1},
    {"exp",       op_exp,       1, {{1, {37}}}, -2, 2},
    {"log",       op_log,       1, {{1, {37}}}, 0.5f, 3},
    {"tanh",      op_tanh,      1, {{1, {37}}}, -2, 2},
    {"clamp",     op_clamp,     1, {{1, {37}}}, -4, 4},
    {"scale",     op_scale,     1, {{1, {37}}}, -2, 2},
    {"sum",       op_sum,       1, {{3, {3, 5, 7}}}, -1, 1},
    {"mean",      op_mean,      1, {{2, {9, 7}}}, -1, 1},
    {"sum_axis",  op_sum_axis,  1, {{3, {3, 5, 7}}}, -1, 1},
    {"mean_axis", op_mean_axis, 1, {{2, {9, 7}}}, -1, 1},
    {"view",      op_view,      1, {{1, {15}}}, 0.5f, 1.5f},
    {"columns",   op_columns,   1, {{2, {5, 9}}}, 0.5f, 1.5f},
    {"gather",    op_gather,    1, {{2, {4, 3}}}, -1, 1},
    {"linear",    op_linear,    3, {{2, {5, 13}}, {2, {7, 13}}, {1, {7}}}, -1, 1},
    {"linear0",   op_linear0,   2, {{2, {33, 67}}, {2, {35, 67}}}, -1, 1},
    {"matmul",    op_matmul,    3, {{2, {5, 13}}, {2, {13, 7}}, {1, {7}}}, -1, 1},
    {"embedding", op_embedding, 1, {{2, {9, 5}}}, -1, 1},
    {"rmsnorm",   op_rmsnorm,   2, {{2, {5, 19}}, {1, {19}}}, 0.2f, 1.5f},
    {"layernorm", op_layernorm, 3, {{2, {5, 19}}, {1, {19}}, {1, {19}}}, 0.2f, 1.5f},
    {"swiglu",    op_swiglu,    2, {{2, {5, 19}}, {2, {5, 19}}}, -2, 2},
    {"gelu_tanh", op_gelu_tanh, 1, {{2, {5, 19}}}, -2, 2},
    {"gelu_erf",  op_gelu_erf,  1, {{2, {5, 19}}}, -2, 2},
    {"rope",      op_rope,      1, {{2, {11, 12}}}, -1, 1},
    {"attention", op_attention, 3, {{2, {11, 20}}, {2, {11, 10}}, {2, {11, 10}}}, -2, 2},
    {"attention_long", op_attention_long, 3, {{2, {74, 16}}, {2, {74, 8}}, {2, {74, 8}}}, -2, 2},
#ifndef TT_TEST_CUDA                  /* trees are trained on the CPU alone */
    {"attention_tree", op_attention_tree, 3, {{2, {11, 20}}, {2, {11, 10}}, {2, {11, 10}}}, -2, 2},
    {"attention_tree_long", op_attention_tree_long, 3, {{2, {74, 16}}, {2, {74, 8}}, {2, {74, 8}}}, -2, 2},
#endif
    {"logprobs",  op_logprobs,  2, {{2, {5, 11}}, {2, {37, 11}}}, -1, 1},
    {"entropy",   op_entropy,   2, {{2, {5, 11}}, {2, {37, 11}}}, -1, 1},
    {"checkpoint", op_checkpoint, 2, {{2, {5, 6}}, {2, {6, 6}}}, -0.6f, 0.6f},
    {"reuse",     op_reuse,     1, {{1, {17}}}, 0.5f, 1.5f},
};

static void check_all(const char *kernel) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    size_t k;
    desc.kernel = kernel;
    ctx = tt_create(&desc);
    TT_CHECK(ctx != NULL);
    for (k = 0; ctx && k < sizeof cases / sizeof cases[0]; k++) {
        double good = worst_error(ctx, &cases[k], 1.0), damaged = worst_error(ctx, &cases[k], 1.03);
        if (good > 5e-3 || damaged < 5e-3) printf("  %s (%s): error %.2g, damaged by 3 %% %.2g\n", cases[k].name, tt_kernel(ctx), good, damaged);
        TT_CHECK(good < 5e-3);
        TT_CHECK(damaged > 5e-3);
    }
    tt_destroy(ctx);
}
TT_TEST(gradients_default) { check_all(NULL); }
TT_TEST(gradients_portable) { check_all("portable"); }

/* y = x^2 with the backward 2 x dy, or a damaged one. */
static tt_status square_forward(void *user, tt_tensor *const *in, int n, tt_tensor *out) {
    float x[16];
    size_t i;
    (void)user;
    (void)n;
    if (!TT_CHECK(out->size <= 16) || tt_tensor_get(in[0], x) != TT_OK) return TT_ERR_DEVICE;
    for (i = 0; i < out->size; i++) x[i] *= x[i];
    return tt_tensor_set(out, x);
}
static tt_status square_backward(void *user, tt_tensor *const *in, int n, tt_tensor *out) {
    const tt_backend *backend = tt_backend_get(out->ctx);
    float *to = tt_grad(in[0]), factor = *(float *)user, x[16], dx[16], dy[16];
    size_t i;
    (void)n;
    if (!to) return TT_OK;
    if (tt_tensor_get(in[0], x) != TT_OK || tt_tensor_get_grad(in[0], dx) != TT_OK || tt_tensor_get_grad(out, dy) != TT_OK) return TT_ERR_DEVICE;
    for (i = 0; i < out->size; i++) dx[i] += factor * x[i] * dy[i];
    return backend->upload(out->ctx, to, dx, out->size * sizeof(float));
}
static float damage = 2.0f;
static tt_tensor *op_square(tt_context *ctx, tt_tensor **in) {
    tt_op_desc d = TT_INIT;
    d.name = "square";
    d.forward = square_forward;
    d.backward = square_backward;
    d.user = &damage;
    return tt_custom(ctx, &d, in, 1, in[0]->ndim, in[0]->shape);
}
TT_TEST(custom_op_and_damaged_backward) {
    static const op_case c = {"square", op_square, 1, {{2, {3, 5}}}, 0.5f, 1.5f};
    tt_context *ctx = tt_create(NULL);
    damage = 2.0f;
    TT_CHECK(worst_error(ctx, &c, 1.0) < 5e-3);
    damage = 1.9f;
    TT_CHECK(worst_error(ctx, &c, 1.0) > 5e-3);
    tt_destroy(ctx);
}

/* clip and ties: the convention that the comments promise */
TT_TEST(clamp_and_ties) {
    static const float x[4] = {-2, -1, 0.5f, 3}, want[4] = {0, 1, 1, 0};
    float grad[4];
    int shape = 4, one = 1;
    tt_context *ctx = tt_create(NULL);
    tt_tensor *a = tt_constant(ctx, 1, &shape, x), *b, *c;
    a->requires_grad = 1;
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_clamp(ctx, a, -1, 1))));
    tt_tensor_get_grad(a, grad);
    TT_CHECK_BYTES(grad, want, sizeof grad);
    tt_step_reset(ctx);
    b = tt_constant(ctx, 1, &one, x);
    c = tt_constant(ctx, 1, &one, x);
    b->requires_grad = c->requires_grad = 1;
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_add(ctx, tt_minimum(ctx, b, c), tt_maximum(ctx, b, c)))));
    tt_tensor_get_grad(b, grad);
    tt_tensor_get_grad(c, grad + 1);
    TT_CHECK_NEAR(grad[0], 2, 0);
    TT_CHECK_NEAR(grad[1], 0, 0);
    tt_destroy(ctx);
}

TT_TEST(detach_and_no_grad) {
    static const float x[3] = {1, 2, 3};
    float grad[3];
    int shape = 3;
    tt_context *ctx = tt_create(NULL);
    tt_tensor *a = tt_constant(ctx, 1, &shape, x), *y;
    a->requires_grad = 1;
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_mul(ctx, a, tt_detach(ctx, a)))));
    tt_tensor_get_grad(a, grad);
    TT_CHECK_BYTES(grad, x, sizeof x);               /* x, not 2 x */
    tt_step_reset(ctx);
    a = tt_constant(ctx, 1, &shape, x);
    a->requires_grad = 1;
    tt_no_grad_begin(ctx);
    y = tt_sum(ctx, tt_exp(ctx, a));
    tt_no_grad_end(ctx);
    TT_CHECK(tt_backward(ctx, y) != TT_OK);
    TT_CHECK_CONTAINS(tt_error(ctx), "requires a gradient");
    tt_destroy(ctx);
}

TT_TEST(errors_stick_with_the_first_cause) {
    int a_shape[2] = {3, 4}, b_shape[2] = {5, 7};
    tt_context *ctx = tt_create(NULL);
    tt_tensor *a = tt_zeros(ctx, 2, a_shape), *b = tt_zeros(ctx, 2, b_shape), *y;
    char first[512];
    y = tt_linear(ctx, a, b, NULL);
    TT_CHECK(y == NULL);
    snprintf(first, sizeof first, "%s", tt_error(ctx));
    TT_CHECK_CONTAINS(first, "tt_linear");
    y = tt_exp(ctx, tt_add(ctx, y, a));
    TT_CHECK(y == NULL && tt_clamp(ctx, NULL, 0, 1) == NULL);
    TT_CHECK_STR(tt_error(ctx), first);
    TT_CHECK_INT(tt_eval(ctx), TT_ERR_SHAPE);
    TT_CHECK_INT(tt_backward(ctx, y), TT_ERR_SHAPE);
    tt_step_reset(ctx);
    TT_CHECK_INT(tt_eval(ctx), TT_OK);
    TT_CHECK_STR(tt_error(ctx), "");
    TT_CHECK(tt_exp(ctx, NULL) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "NULL");
    tt_step_reset(ctx);
    a = tt_zeros(ctx, 2, a_shape);
    TT_CHECK(tt_add(ctx, a, tt_zeros(ctx, 2, b_shape)) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "[1,1,3,4] and [1,1,5,7] do not broadcast");
    tt_step_reset(ctx);
    { static const int32_t bad[2] = {1, 3}; TT_CHECK(tt_embedding(ctx, tt_zeros(ctx, 2, a_shape), bad, 2) == NULL); }
    TT_CHECK_CONTAINS(tt_error(ctx), "3");
    tt_step_reset(ctx);
    { int huge[4] = {1 << 30, 1 << 30, 1 << 30, 4}; TT_CHECK(tt_zeros(ctx, 4, huge) == NULL); }
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_MEM);
    tt_destroy(ctx);
}

/* The user's own PPO loss from elementary ops, against its formula by hand. */
static tt_tensor *ppo(tt_context *ctx, tt_tensor *logp, tt_tensor *old, tt_tensor *advantage) {
    tt_tensor *ratio = tt_exp(ctx, tt_sub(ctx, logp, old));
    tt_tensor *clipped = tt_clamp(ctx, ratio, 0.8f, 1.2f);
    return tt_neg(ctx, tt_mean(ctx, tt_minimum(ctx, tt_mul(ctx, ratio, advantage), tt_mul(ctx, clipped, advantage))));
}
TT_TEST(a_loss_from_elementary_ops) {
    static const float logp[4] = {-1.0f, -0.5f, -2.0f, -0.1f}, old[4] = {-1.1f, -1.5f, -1.0f, -0.1f}, advantage[4] = {1, 1, -1, -2};
    double loss = 0, r;
    float grad[4];
    int n = 4, i;
    tt_context *ctx = tt_create(NULL);
    tt_tensor *l = tt_constant(ctx, 1, &n, logp), *y;
    l->requires_grad = 1;
    y = ppo(ctx, l, tt_constant(ctx, 1, &n, old), tt_constant(ctx, 1, &n, advantage));
    TT_CHECK_OK(ctx, tt_backward(ctx, y));
    for (i = 0; i < 4; i++) {
        double a = (double)advantage[i], c;
        r = exp((double)logp[i] - (double)old[i]);
        c = r < 0.8 ? 0.8 : r > 1.2 ? 1.2 : r;
        loss -= (r * a < c * a ? r * a : c * a) / 4;
    }
    TT_CHECK_NEAR(tt_item(y), loss, 1e-6);
    tt_tensor_get_grad(l, grad);
    TT_CHECK_NEAR(grad[0], -exp(0.1) / 4, 1e-6);
    TT_CHECK_NEAR(grad[1], 0, 0);                     /* clipped */
    TT_CHECK_NEAR(grad[2], 0, 0);                     /* ratio 0.37 below 0.8 with A < 0: clipped */
    TT_CHECK_NEAR(grad[3], 2.0 / 4, 1e-6);
    tt_destroy(ctx);
}

TT_TEST(gradients_accumulate_over_backwards) {
    static const float x[3] = {1, 2, 3};
    float once[3], twice[3];
    int n = 3, i;
    tt_context *ctx = tt_create(NULL);
    tt_tensor *p = tt_parameter(ctx, 1, &n, "p");
    tt_tensor_set(p, x);
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_exp(ctx, p))));
    tt_tensor_get_grad(p, once);
    tt_step_reset(ctx);
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_sum(ctx, tt_exp(ctx, p))));
    tt_tensor_get_grad(p, twice);
    for (i = 0; i < 3; i++) TT_CHECK_NEAR(twice[i], 2 * once[i], 1e-6);
    tt_zero_grad(p);
    tt_tensor_get_grad(p, once);
    TT_CHECK_NEAR(once[0], 0, 0);
    tt_tensor_destroy(p);
    tt_destroy(ctx);
}

static tt_status small_step(tt_context *ctx) {
    int x_shape[2] = {7, 9}, w_shape[2] = {5, 9};
    tt_tensor *x = tt_zeros(ctx, 2, x_shape), *w = tt_zeros(ctx, 2, w_shape), *in[2], *y;
    if (w) w->requires_grad = 1;
    in[0] = x;
    in[1] = w;
    y = tt_linear(ctx, x, w, NULL);
    y = tt_add(ctx, tt_mean(ctx, tt_exp(ctx, y)), tt_sum(ctx, tt_recompute(ctx, segment, NULL, in, 2)));
    return tt_backward(ctx, y);
}
TT_TEST(a_steady_step_allocates_nothing) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    long calls;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_CHECK_OK(ctx, small_step(ctx));
    tt_step_reset(ctx);
    TT_CHECK_OK(ctx, small_step(ctx));
    tt_step_reset(ctx);
    calls = memory.calls;
    TT_CHECK_OK(ctx, small_step(ctx));
    tt_step_reset(ctx);
    TT_CHECK_INT(memory.calls, calls);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
/* A step of n tensors of up to `most` floats each, whose sizes follow from `seed`, and one that is `times` as large, anywhere
 * among them. Each keeps what was written into it. Returns the bytes asked for; *first: where the first one lies. */
static size_t scattered_step(tt_context *ctx, uint64_t seed, int n, int most, int times, float **first) {
    tt_rng rng = TT_INIT;
    float *x[64];
    int size[64], large, i;
    size_t bytes = 0;
    rng.seed = seed;
    large = tt_rng_below(&rng, n);
    for (i = 0; i < n; i++) {
        tt_tensor *t;
        size[i] = i == large ? times * most : 1 + tt_rng_below(&rng, most);
        t = tt_zeros(ctx, 1, &size[i]);
        x[i] = t ? (float *)t->data : NULL;
        if (!t) {
            TT_CHECK(t != NULL);
            return 0;
        }
        tt_test_write(ctx, &x[i][0], (float)i);
        tt_test_write(ctx, &x[i][size[i] - 1], (float)i);
        bytes += (size_t)size[i] * sizeof(float);
    }
    for (i = 0; i < n; i++) {
        TT_CHECK_NEAR(tt_test_read(ctx, &x[i][0]), i, 0);
        TT_CHECK_NEAR(tt_test_read(ctx, &x[i][size[i] - 1]), i, 0);
    }
    tt_step_reset(ctx);
    *first = x[0];
    return bytes;
}

TT_TEST(steps_of_other_sizes_keep_their_memory) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    size_t most = 0, bytes;
    float *first, *was = NULL;
    long calls = 0;
    int i;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    for (i = 1; i < 64; i++, was = first) {        /* a step that grows moves nothing that there was */
        scattered_step(ctx, 1, i, 100000, 10, &first);
        TT_CHECK(!was || was == first);
    }
    for (i = 0; i < 8; i++) {        /* large and small steps in turn: the second round finds all that it needs */
        if (i == 4) { calls = memory.calls; }
        scattered_step(ctx, (uint64_t)(i % 4), i % 2 ? 50 : 3, i % 2 ? 100000 : 1000, 10, &first);
    }
    TT_CHECK_INT(memory.calls, calls);
    tt_destroy(ctx);
    ctx = tt_create(&desc);
    for (i = 0; i < 24; i++) {       /* whatever the sizes: little more than twice what the largest step took */
        bytes = scattered_step(ctx, (uint64_t)(100 + i), 41, 200000, 100, &first);
        most = bytes > most ? bytes : most;
    }
    TT_CHECK(memory.live_bytes < 2 * most + ((size_t)80 << 20));
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_TEST(every_failing_allocation_is_an_error) {
    long n;
    int done = 0;
    for (n = 1; !done && n < 1000; n++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        memory.fail_at = n;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        if (ctx) {
            tt_status status = small_step(ctx);
            done = status == TT_OK && memory.calls < n;
            TT_CHECK(done || status == TT_ERR_MEM);
            tt_destroy(ctx);
        }
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(done && n > 3);
}

TT_MAIN(gradients_default, gradients_portable, custom_op_and_damaged_backward, clamp_and_ties, detach_and_no_grad,
        errors_stick_with_the_first_cause, a_loss_from_elementary_ops, gradients_accumulate_over_backwards,
        a_steady_step_allocates_nothing, steps_of_other_sizes_keep_their_memory, every_failing_allocation_is_an_error)
