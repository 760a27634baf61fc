/* Chapter 9: AdamW against its formulas in double, clipping, skipped steps, schedules, exact resume. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

static tt_model *small_model(tt_context *ctx) {
    tt_model_config c = TT_INIT;
    c.vocab_size = 19;
    c.hidden_size = 8;
    c.num_hidden_layers = 1;
    c.num_attention_heads = 2;
    c.intermediate_size = 12;
    c.max_position_embeddings = 16;
    return tt_model_create(ctx, &c, 1);
}
/* A made-up gradient for parameter i, element k, at a step. */
static float gradient(int i, size_t k, int step) { return (float)sin(0.7 * i + 1.3 * (double)k + 0.31 * step) * 0.5f; }
static void set_gradients(tt_model *m, int step, float factor) {
    static float values[4096];
    tt_context *ctx = tt_model_context(m);
    int i;
    size_t k;
    for (i = 0; i < tt_model_n_params(m); i++) {
        tt_tensor *p = tt_model_param(m, i);
        float *g = tt_grad(p);
        for (k = 0; TT_CHECK(p->size <= 4096) && k < p->size; k++) values[k] = factor * gradient(i, k, step);
        if (g) TT_CHECK_OK(ctx, tt_backend_get(ctx)->upload(ctx, g, values, p->size * sizeof(float)));
    }
}
/* Element k of the gradient of parameter i, read or set. */
static float gradient_at(tt_model *m, int i, size_t k) {
    tt_context *ctx = tt_model_context(m);
    float value = NAN;
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->download(ctx, &value, tt_grad(tt_model_param(m, i)) + k, sizeof value));
    return value;
}
static void set_gradient_at(tt_model *m, int i, size_t k, float value) {
    tt_context *ctx = tt_model_context(m);
    TT_CHECK_OK(ctx, tt_backend_get(ctx)->upload(ctx, tt_grad(tt_model_param(m, i)) + k, &value, sizeof value));
}
TT_TEST(adamw_follows_its_formulas) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx);
    tt_adamw_desc d = TT_INIT;
    tt_optimizer *o;
    tt_optimizer_stats stats;
    size_t size = tt_model_size(m), k, at;
    double *p = (double *)malloc(size * sizeof *p), *m1 = (double *)calloc(size, sizeof *m1), *m2 = (double *)calloc(size, sizeof *m2);
    int i, step;
    d.weight_decay = 0.1f;
    d.max_grad_norm = 0.5f;
    o = tt_adamw_create(m, &d);
    for (at = 0, i = 0; i < tt_model_n_params(m); i++) for (k = 0; k < tt_model_param(m, i)->size; k++) p[at++] = (double)TT_F(tt_model_param(m, i))[k];
    for (step = 0; step < 6; step++) {
        double norm = 0, scale, lr = 0.01, given = step != 4;      /* 4: no backward, so the gradient is zero */
        if (given > 0) { set_gradients(m, step, 1); }
        for (i = 0; i < tt_model_n_params(m); i++) for (k = 0; k < tt_model_param(m, i)->size; k++) norm += pow(given * (double)gradient(i, k, step), 2);
        norm = sqrt(norm);
        scale = 0.5 / (norm + 1e-6) < 1 ? 0.5 / (norm + 1e-6) : 1;
        for (at = 0, i = 0; i < tt_model_n_params(m); i++) {
            for (k = 0; k < tt_model_param(m, i)->size; k++, at++) {
                double g = scale * given * (double)gradient(i, k, step), decay = tt_model_param(m, i)->ndim > 1 ? 0.1 : 0;
                m1[at] = 0.9 * m1[at] + 0.1 * g;
                m2[at] = 0.999 * m2[at] + 0.001 * g * g;
                p[at] -= lr * decay * p[at];
                p[at] -= lr * (m1[at] / (1 - pow(0.9, step + 1))) / (sqrt(m2[at] / (1 - pow(0.999, step + 1))) + 1e-8);
            }
        }
        TT_CHECK_OK(ctx, tt_optimizer_step(o, 0.01f, &stats));
        TT_CHECK_NEAR(stats.grad_norm, norm, 1e-4);
        TT_CHECK_INT(stats.step, step + 1);
        TT_CHECK_NEAR(gradient_at(m, 2, 3), 0, 0);        /* zeroed */
    }
    for (at = 0, i = 0; i < tt_model_n_params(m); i++) {
        double worst = 0;
        for (k = 0; k < tt_model_param(m, i)->size; k++, at++) {
            double e = fabs(p[at] - (double)TT_F(tt_model_param(m, i))[k]);
            if (e > worst) worst = e;
        }
        TT_CHECK(worst < 2e-5);
    }
    free(p);
    free(m1);
    free(m2);
    tt_optimizer_destroy(o);
    tt_model_destroy(m);
    tt_destroy(ctx);
}
TT_TEST(a_gradient_that_is_not_finite_is_skipped_and_counted) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx);
    tt_adamw_desc d = TT_INIT;
    tt_optimizer *o;
    tt_optimizer_stats stats;
    float before, first;
    int i;
    d.max_grad_norm = 1;
    o = tt_adamw_create(m, &d);
    before = TT_F(tt_model_param(m, 1))[0];
    set_gradients(m, 0, 1);
    set_gradient_at(m, 3, 5, (float)NAN);
    TT_CHECK_OK(ctx, tt_optimizer_step(o, 0.01f, &stats));
    TT_CHECK_INT(stats.skipped, 1);
    TT_CHECK_INT(stats.n_skipped, 1);
    TT_CHECK_INT(stats.step, 0);
    TT_CHECK(TT_F(tt_model_param(m, 1))[0] == before);
    TT_CHECK(gradient_at(m, 3, 5) == 0);
    set_gradients(m, 0, 1);
    set_gradient_at(m, 0, 0, (float)INFINITY);
    TT_CHECK_OK(ctx, tt_optimizer_step(o, 0.01f, &stats));
    TT_CHECK_INT(stats.n_skipped, 2);
    set_gradients(m, 0, 1);
    first = TT_F(tt_model_param(m, 2))[3];
    TT_CHECK_OK(ctx, tt_optimizer_step(o, 0.01f, &stats));
    TT_CHECK_INT(stats.skipped, 0);
    TT_CHECK_NEAR(fabs((double)(TT_F(tt_model_param(m, 2))[3] - first)), 0.01, 1e-4);   /* first AdamW step: lr * sign */
    TT_CHECK_INT(tt_optimizer_step(o, -1, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "lr is -1");
    TT_CHECK_INT(tt_optimizer_step(o, 1e38f, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "lr is 1e+38");
    tt_optimizer_destroy(o);
    d.beta2 = 1.5f;
    TT_CHECK(tt_adamw_create(m, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "beta2 is 1.5");
    d.beta2 = 0;
    for (i = 0; i < 4; i++) {
        tt_adamw_desc bad = d;
        *(i == 0 ? &bad.eps : i == 1 ? &bad.weight_decay : i == 2 ? &bad.max_grad_norm : &bad.beta1) = i == 3 ? (float)NAN : HUGE_VALF;
        TT_CHECK(tt_adamw_create(m, &bad) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), i == 3 ? "beta1 is" : "inf");
    }
    tt_model_destroy(m);
    tt_destroy(ctx);
}
TT_TEST(schedules) {
    tt_schedule s = TT_INIT;
    s.lr = 1;
    s.warmup_steps = 4;
    s.total_steps = 14;
    s.min_lr = 0.2f;
    TT_CHECK_NEAR(tt_learning_rate(&s, 0), 0.25, 1e-7);
    TT_CHECK_NEAR(tt_learning_rate(&s, 3), 1, 1e-7);
    TT_CHECK_NEAR(tt_learning_rate(&s, 9), 1, 1e-7);
    s.type = TT_LINEAR;
    TT_CHECK_NEAR(tt_learning_rate(&s, 4), 1, 1e-7);
    TT_CHECK_NEAR(tt_learning_rate(&s, 9), 0.6, 1e-6);
    TT_CHECK_NEAR(tt_learning_rate(&s, 14), 0.2, 1e-6);
    TT_CHECK_NEAR(tt_learning_rate(&s, 99), 0.2, 1e-6);
    s.type = TT_COSINE;
    TT_CHECK_NEAR(tt_learning_rate(&s, 9), 0.6, 1e-6);
    TT_CHECK_NEAR(tt_learning_rate(&s, 5), 0.2 + 0.8 * 0.5 * (1 + cos(3.14159265358979 * 0.1)), 1e-6);
    TT_CHECK_NEAR(tt_learning_rate(&s, 14), 0.2, 1e-6);
}
static float *weights_after(int steps, int save_at, const char *path) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx);
    tt_optimizer *o = tt_adamw_create(m, NULL);
    float *all = (float *)malloc(tt_model_size(m) * sizeof *all);
    size_t at = 0;
    int i, step;
    for (step = 0; step < steps; step++) {
        if (step == save_at) {                  /* everything is thrown away and read back */
            tt_text json = TT_INIT;
            json.ctx = ctx;
            TT_CHECK_OK(ctx, tt_optimizer_save(o, path, "{\"position\":\"half \\\"way\\\"\"}", NULL, 0));
            tt_optimizer_destroy(o);
            tt_model_destroy(m);
            m = small_model(ctx);
            o = tt_adamw_create(m, NULL);
            TT_CHECK_OK(ctx, tt_optimizer_load(o, path, &json, NULL, 0));
            TT_CHECK_STR(json.data, "{\"position\":\"half \\\"way\\\"\"}");
            tt_text_free(&json);
        }
        set_gradients(m, step, 1);
        TT_CHECK_OK(ctx, tt_optimizer_step(o, 0.003f, NULL));
    }
    for (i = 0; i < tt_model_n_params(m); i++) {
        memcpy(all + at, TT_F(tt_model_param(m, i)), tt_model_param(m, i)->size * sizeof *all);
        at += tt_model_param(m, i)->size;
    }
    tt_optimizer_destroy(o);
    tt_model_destroy(m);
    tt_destroy(ctx);
    return all;
}
TT_TEST(resume_is_exact) {
    const char *path = tt_test_tmp("optimizer.safetensors");
    float *through = weights_after(7, -1, path), *resumed = weights_after(7, 4, path);
    TT_CHECK_BYTES(through, resumed, (19 * 8 * 2 + 8 * 3 + 4 * 64 + 3 * 96) * sizeof(float));
    free(through);
    free(resumed);
    {
        tt_context *ctx = tt_create(NULL);
        tt_model *m = small_model(ctx);
        tt_optimizer *o = tt_adamw_create(m, NULL);
        TT_CHECK(tt_optimizer_load(o, tt_test_tmp("no_such_file"), NULL, NULL, 0) != TT_OK);
        TT_CHECK_CONTAINS(tt_error(ctx), "no_such_file");
        tt_optimizer_destroy(o);
        tt_model_destroy(m);
        tt_destroy(ctx);
    }
}

/* ---- what a state must not do: change anything before all of it is known to be good, or take the place of a good one ---- */
typedef struct small_run { tt_context *ctx; tt_model *m; tt_optimizer *o; } small_run;
static small_run run_of(int steps) {
    small_run r;
    int step;
    r.ctx = tt_create(NULL);
    r.m = small_model(r.ctx);
    r.o = tt_adamw_create(r.m, NULL);
    for (step = 0; step < steps; step++) {
        set_gradients(r.m, step, 1);
        TT_CHECK_OK(r.ctx, tt_optimizer_step(r.o, 0.003f, NULL));
    }
    return r;
}
static void run_end(small_run *r) {
    tt_optimizer_destroy(r->o);
    tt_model_destroy(r->m);
    tt_destroy(r->ctx);
}
/* A sum over weights, moments and counters. */
static uint64_t print_of(const small_run *r) {
    uint64_t sum = (uint64_t)r->o->step * 1000003u + (uint64_t)r->o->n_skipped;
    int i, k;
    for (i = 0; i < r->o->n; i++) {
        tt_tensor *const of[3] = {r->o->params[i], r->o->m[i], r->o->v[i]};
        for (k = 0; k < 3; k++) {
            float values[4096];
            tt_tensor_get(of[k], values);
            sum = tt_hash(values, of[k]->size * sizeof(float), sum);
        }
    }
    return sum;
}
static void save_under(small_run *r, const char *path, const char *state) {
    tt_text names = TT_INIT;
    tt_named *list;
    int n;
    names.ctx = r->ctx;
    n = 3 * r->o->n;
    list = tti_optimizer_tensors(r->o, NULL, 0, &names);
    TT_CHECK(list && tt_state_save(r->ctx, path, list, n, state) == TT_OK);
    tt_free(r->ctx, list, (size_t)n, sizeof *list);
    tt_text_free(&names);
}
TT_TEST(a_state_with_odd_counters_changes_nothing) {
    static const char *const bad[] = {
        "{\"step\":1e300,\"n_skipped\":0,\"user\":\"\"}", "{\"step\":2.5,\"n_skipped\":0,\"user\":\"\"}", "{\"step\":-1,\"n_skipped\":0,\"user\":\"\"}",
        "{\"step\":\"3\",\"n_skipped\":0,\"user\":\"\"}", "{\"step\":true,\"n_skipped\":0,\"user\":\"\"}", "{\"step\":9007199254740994,\"n_skipped\":0,\"user\":\"\"}",
        "{\"step\":3,\"n_skipped\":1e300,\"user\":\"\"}", "{\"step\":3,\"n_skipped\":-2,\"user\":\"\"}", "{\"step\":3,\"n_skipped\":0.5,\"user\":\"\"}",
        "{\"step\":3,\"user\":\"\"}", "{\"n_skipped\":0,\"user\":\"\"}", "{\"step\":3,\"n_skipped\":0}", "{\"step\":3,\"n_skipped\":0,\"user\":7}",
        "[]", "{", "", "null",
    };
    const char *path = tt_test_tmp("odd.safetensors");
    small_run r = run_of(2), other = run_of(3);
    tt_text json = TT_INIT;
    uint64_t before = print_of(&r);
    size_t i;
    json.ctx = r.ctx;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        save_under(&other, path, bad[i]);
        if (!TT_CHECK_INT(tt_optimizer_load(r.o, path, &json, NULL, 0), TT_ERR_FILE)) { printf("  accepted: %s\n", bad[i]); }
        TT_CHECK_CONTAINS(tt_error(r.ctx), "odd.safetensors");
        TT_CHECK(print_of(&r) == before);
        TT_CHECK_INT(json.size, 0);
    }
    save_under(&other, path, "{\"step\":3,\"n_skipped\":0,\"user\":\"x\"}");
    TT_CHECK_OK(r.ctx, tt_optimizer_load(r.o, path, &json, NULL, 0));
    TT_CHECK_STR(json.data, "x");
    TT_CHECK(print_of(&r) == print_of(&other));
    tt_text_free(&json);
    run_end(&r);
    run_end(&other);
}
TT_TEST(moments_that_are_not_finite_replace_no_good_state) {
    const char *path = tt_test_tmp("good.safetensors");
    small_run r = run_of(2), other = run_of(0);
    float values[4096];
    uint64_t before = print_of(&r);
    TT_CHECK_OK(r.ctx, tt_optimizer_save(r.o, path, "{}", NULL, 0));
    tt_tensor_get(r.o->v[3], values);
    values[7] = NAN;
    tt_tensor_set(r.o->v[3], values);
    TT_CHECK_INT(tt_optimizer_save(r.o, path, "{}", NULL, 0), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "good.safetensors: not written, for value 7 of adamw.v.model.layers.0");
    TT_CHECK_OK(other.ctx, tt_optimizer_load(other.o, path, NULL, NULL, 0));
    TT_CHECK(print_of(&other) == before);
    run_end(&r);
    run_end(&other);
}

TT_MAIN(adamw_follows_its_formulas, a_gradient_that_is_not_finite_is_skipped_and_counted, schedules, resume_is_exact,
        a_state_with_odd_counters_changes_nothing, moments_that_are_not_finite_replace_no_good_state)
