/* Learning from feedback: scoring behind another context, and the methods of examples/feedback.h against
 * tests/golden/feedback.json. */
#include "../thinktuning.h"
#include "../examples/feedback.h"
#include "tt_test.h"
#include "rollouts.h"
#include <stdlib.h>

enum { ROWS = 3, WIDTH = 4, END = 2, N_WORDS = 10 };

/* ---- the golden batch: three responses of 4, 2 and 3 tokens ---- */
typedef struct golden {
    tt_context *ctx;
    tt_test_memory memory;
    tt_text text, values;
    tt_json *root, *want;
    const tt_json *in;
} golden;

static const int golden_lengths[ROWS] = {4, 2, 3};

static void golden_open(golden *g) {
    tt_desc desc = TT_INIT;
    memset(g, 0, sizeof *g);
    desc.allocator = tt_test_allocator(&g->memory);
    g->ctx = tt_create(&desc);
    g->text.ctx = g->values.ctx = g->ctx;
    TT_CHECK_OK(g->ctx, tt_file_read(g->ctx, "tests/golden/rl.json", &g->text));
    TT_CHECK_OK(g->ctx, tt_file_read(g->ctx, "tests/golden/feedback.json", &g->values));
    g->root = tt_json_parse(g->ctx, g->text.data, g->text.size);
    g->want = tt_json_parse(g->ctx, g->values.data, g->values.size);
    g->in = tt_json_get(g->root, "inputs");
    TT_CHECK(g->in != NULL && g->want != NULL);
}

static void golden_close(golden *g) {
    tt_json_free(g->ctx, g->root);
    tt_json_free(g->ctx, g->want);
    tt_text_free(&g->text);
    tt_text_free(&g->values);
    tt_destroy(g->ctx);
    TT_CHECK_NO_LEAK(g->memory);
}

static double input(const golden *g, const char *name, int i, int t) {
    return value2(tt_json_get(g->in, name), i, t);
}

static int golden_rows(golden *g, tt_rollouts *all) {
    int i, t;
    if (!TT_CHECK_OK(g->ctx, make_rollouts(g->ctx, 1, ROWS, golden_lengths, END, all))) { return 0; }
    for (i = 0; i < ROWS; i++) {
        tt_rollout *r = &all->items[i];
        r->advantage = (float)value(tt_json_get(g->in, "adv"), i);
        r->old_logprobs = (float *)tt_alloc(g->ctx, (size_t)golden_lengths[i], sizeof(float));
        for (t = 0; t < golden_lengths[i]; t++) {
            r->old_logprobs[t] = (float)input(g, "old", i, t);
            r->sampling_logprobs[t] = (float)input(g, "sampler", i, t);
        }
    }
    return 1;
}

/* Loss and slopes of rows [begin, end) at log-probs `logp`, row by row. */
static double loss_at(tt_context *ctx, const tt_rollouts *all, int begin, int end, const tt_grpo_config *c,
                      const float *logp, float *slopes, tt_grpo_metrics *m) {
    tt_loss_batch batch = TT_INIT;
    tt_loss_totals totals = tt_grpo_totals(all, c);
    int indices[16], size = 0, i;
    tt_tensor *x, *loss;
    double out;
    for (i = begin; i < end; i++) {
        indices[i - begin] = i;
        size += all->items[i].response_length;
    }
    batch.rollouts = all;
    batch.indices = indices;
    batch.n = end - begin;
    batch.totals = &totals;
    x = tt_constant(ctx, 1, &size, logp);
    x->requires_grad = 1;
    loss = tt_grpo_loss(ctx, x, NULL, &batch, c, m);
    TT_CHECK_OK(ctx, tt_backward(ctx, loss));
    memset(slopes, 0, (size_t)size * sizeof *slopes);
    if (x->grad) { TT_CHECK_OK(ctx, tt_tensor_get_grad(x, slopes)); }
    out = tt_item(loss);
    tt_step_reset(ctx);
    return out;
}

static void golden_logp(const golden *g, float *out) {
    int i, t;
    for (i = 0; i < ROWS; i++) {
        for (t = 0; t < golden_lengths[i]; t++) { *out++ = (float)input(g, "logp", i, t); }
    }
}

/* Loss and gradient as the file has them, in one batch and as three micro-batches. */
static void check_method(golden *g, const tt_rollouts *all, const tt_grpo_config *c, const char *name) {
    const tt_json *want = tt_json_get(g->want, name), *slopes = tt_json_get(want, "dloss_dlogp");
    float logp[16], got[16];
    tt_grpo_metrics m = TT_INIT;
    double whole, sum = 0;
    int i, t, at = 0;
    golden_logp(g, logp);
    whole = loss_at(g->ctx, all, 0, ROWS, c, logp, got, &m);
    TT_CHECK_NEAR(whole, tt_json_number(want, "loss", 99), 1e-6);
    for (i = 0; i < ROWS; i++) {
        for (t = 0; t < golden_lengths[i]; t++, at++) { TT_CHECK_NEAR(got[at], value2(slopes, i, t), 1e-6); }
    }
    for (i = 0, at = 0; i < ROWS; at += golden_lengths[i++]) {
        sum += loss_at(g->ctx, all, i, i + 1, c, logp + at, got + at, &m);
    }
    TT_CHECK_NEAR(sum, whole, 1e-6);
}

/* The last row is y1: an off-policy response that the first two are not compared with alike. */
static void check_refined(golden *g, const char *name, tt_advantage_type advantage, tt_token_loss_fn loss) {
    const tt_json *want = tt_json_get(g->want, name);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    int i;
    if (!golden_rows(g, &all)) { return; }
    TT_CHECK_OK(g->ctx, tt_rollout_off_policy(&all, 2, all.items[2].tokens + 2, 3, END));
    all.items[2].old_logprobs = NULL;
    c.advantage = advantage;
    c.scale_rewards = TT_SCALE_NONE;
    c.off_policy_loss = loss;
    c.dual_clip = -1;
    for (i = 0; i < ROWS; i++) {
        all.items[i].rewards[0] = (float)value(tt_json_get(tt_json_get(g->want, "inputs"), "reward"), i);
    }
    TT_CHECK_OK(g->ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    for (i = 0; i < ROWS; i++) {
        TT_CHECK_NEAR(all.items[i].advantage, value(tt_json_get(want, "advantages"), i), 1e-6);
    }
    check_method(g, &all, &c, name);
    tt_rollouts_free(&all);
}

/* A_t = q - o for the rows before n_scored; gamma: MiniLLM's sum of what comes later. */
static void set_scored(golden *g, tt_rollouts *all, int n_scored, double gamma) {
    int i, t;
    for (i = 0; i < n_scored; i++) {
        float a[WIDTH];
        double later = 0;
        for (t = golden_lengths[i] - 1; t >= 0; t--) {
            later = input(g, "ref", i, t) - input(g, "old", i, t) + gamma * later;
            a[t] = (float)later;
        }
        TT_CHECK_OK(g->ctx, tt_rollout_advantages(all, i, a));
    }
}

TT_TEST(methods_have_the_golden_values) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c = TT_INIT, plain = TT_INIT;
    tt_feedback_setup setup = TT_INIT;
    golden_open(&g);
    check_refined(&g, "critique_grpo", TT_ADV_GRPO, NULL);
    check_refined(&g, "rltf_sd", TT_ADV_LUFFY, tt_loss_rltf);
    TT_REQUIRE(golden_rows(&g, &all));
    c.dual_clip = plain.dual_clip = -1;
    c.token_loss = tt_loss_sdpo;
    c.token_loss_user = &setup;
    setup.method = tt_feedback_method_find(g.ctx, "sdpo");
    set_scored(&g, &all, ROWS, 0);
    check_method(&g, &all, &c, "sdpo");
    setup.distillation_is_clip = 1.1f;
    check_method(&g, &all, &c, "sdpo_clip_1.1");
    setup.distillation_is_clip = 0;
    setup.distillation_weight = 0.5f;
    check_method(&g, &all, &c, "sdpo_weight_0.5");
    setup.distillation_weight = 0;
    check_method(&g, &all, &plain, "opd");
    set_scored(&g, &all, ROWS, 0.5);
    check_method(&g, &all, &plain, "opd_gamma_0.5");
    set_scored(&g, &all, ROWS, 0);
    TT_CHECK_OK(g.ctx, tt_rollout_advantages(&all, 2, NULL));
    setup.method = tt_feedback_method_find(g.ctx, "srpo");
    check_method(&g, &all, &c, "srpo_row_2_grpo");
    setup.method = tt_feedback_method_find(g.ctx, "sdpo");
    setup.distillation_weight = 0.5f;
    check_method(&g, &all, &c, "sdpo_weight_0.5_two_rows");
    c.aggregation = TT_SEQ_MEAN_TOKEN_MEAN;
    check_method(&g, &all, &c, "sdpo_weight_0.5_two_rows_seq_mean");
    setup.distillation_weight = 0;
    memset(all.items[2].kind + 2, TT_KIND_ENVIRONMENT, 3);      /* what has no teacher's log-prob */
    check_method(&g, &all, &c, "sdpo_two_rows_seq_mean");
    c.aggregation = TT_TOKEN_MEAN;
    check_method(&g, &all, &c, "sdpo_two_rows");
    tt_rollouts_free(&all);
    golden_close(&g);
}

TT_TEST(the_raw_ratio_is_measured_before_any_bound) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m = TT_INIT;
    const tt_json *want;
    float logp[16], slopes[16];
    golden_open(&g);
    want = tt_json_get(g.want, "raw_ratio");
    TT_REQUIRE(golden_rows(&g, &all));
    golden_logp(&g, logp);
    c.mismatch = TT_MISMATCH_TOKEN_TRUNCATE;
    c.mismatch_high = 1.01f;
    loss_at(g.ctx, &all, 0, ROWS, &c, logp, slopes, &m);
    TT_CHECK_NEAR(m.ratio_mean, tt_json_number(want, "mean", 9), 1e-6);
    TT_CHECK_NEAR(m.ratio_min, tt_json_number(want, "min", 9), 1e-6);
    TT_CHECK_NEAR(m.ratio_max, tt_json_number(want, "max", 9), 1e-6);
    TT_CHECK_NEAR(m.ratio_outside, tt_json_number(want, "outside", 9), 1e-12);
    TT_CHECK(m.mismatch_mean < m.ratio_mean && m.ratio_max > 1.02);
    tt_rollouts_free(&all);
    golden_close(&g);
}

TT_TEST(an_advantage_that_is_no_number_is_refused_by_place) {
    golden g;
    tt_rollouts all;
    float a[WIDTH] = {1, 2, 3, 4};
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all));
    a[1] = (float)NAN;
    TT_CHECK_INT(tt_rollout_advantages(&all, 2, a), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(g.ctx), "prompt 0, sample 2, token 1 has nan, expected a finite number");
    TT_CHECK(all.items[2].advantages == NULL);
    TT_CHECK_INT(tt_rollout_advantages(&all, 3, a), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(g.ctx), "index is 3, expected 0..2");
    tt_rollouts_free(&all);
    golden_close(&g);
}

/* ---- scoring ---- */
static tt_model *small_model(tt_context *ctx, uint64_t seed, int positions) {
    tt_model_config c = TT_INIT;
    c.vocab_size = 31;      /* of the tokenizer below */
    c.hidden_size = 32;
    c.num_hidden_layers = 2;
    c.num_attention_heads = 2;
    c.max_position_embeddings = positions;
    return tt_model_create(ctx, &c, seed);
}

/* What training computes of one sequence. */
static void training_logprobs(tt_model *m, const int32_t *context, int n, const int32_t *response, int length,
                              float *out) {
    tt_context *ctx = tt_model_context(m);
    int32_t tokens[64], offsets[2] = {0, 0};
    unsigned char mask[64];
    tt_batch_desc d = TT_INIT;
    offsets[1] = (int32_t)(n + length);
    memcpy(tokens, context, (size_t)n * sizeof *tokens);
    memcpy(tokens + n, response, (size_t)length * sizeof *tokens);
    memset(mask, 0, (size_t)n);
    memset(mask + n, 1, (size_t)length);
    d.n_sequences = 1;
    d.offsets = offsets;
    d.tokens = tokens;
    d.mask = mask;
    TT_CHECK_OK(ctx, tt_tensor_get(tt_model_logprobs(m, tt_batch_create(ctx, &d), 0.7f, NULL), out));
    tt_step_reset(ctx);
}

/* Contexts of other lengths, by another model, in batches of any size: the bits of training, each token. */
TT_TEST(a_response_is_scored_behind_any_context_as_training_would) {
    static const int lengths[8] = {4, 2, 3, 1, 5, 2, 4, 3};
    static const int budgets[4] = {0, 1, 9, 17};
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_model *m;
    tt_rollouts all;
    int32_t words[16];
    tt_request contexts[8];
    int k, i, t;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    m = small_model(ctx, 5, 32);
    TT_REQUIRE(m && make_rollouts(ctx, 2, 4, lengths, END, &all) == TT_OK);
    for (i = 0; i < 16; i++) { words[i] = 3 + i % 7; }
    memset(contexts, 0, sizeof contexts);
    for (i = 0; i < 8; i++) {
        contexts[i].prompt = words + i % 3;
        contexts[i].prompt_length = i == 5 ? 0 : 1 + (5 * i) % 11;      /* 5 is not scored */
    }
    for (k = 0; k < 8; k++) {
        tt_scoring s = TT_INIT;
        float got[24], want[8];
        int at = 0, skipped = -1;
        s.model = m;
        s.temperature = 0.7f;
        s.micro_batch_tokens = budgets[k % 4];
        s.contexts = k < 4 ? contexts : NULL;
        TT_CHECK_OK(ctx, tt_rollouts_logprobs(&all, &s, got, &skipped));
        TT_CHECK_INT(skipped, 0);
        for (i = 0; i < 8; at += lengths[i++]) {
            const tt_rollout *r = &all.items[i];
            const int32_t *context = k < 4 ? contexts[i].prompt : r->tokens;
            int n = k < 4 ? contexts[i].prompt_length : r->prompt_length;
            if (n == 0) {
                for (t = 0; t < lengths[i]; t++) { TT_CHECK(isnan(got[at + t])); }
                continue;
            }
            training_logprobs(m, context, n, r->tokens + r->prompt_length, lengths[i], want);
            TT_CHECK_BYTES(got + at, want, (size_t)lengths[i] * sizeof(float));
        }
    }
    tt_rollouts_free(&all);
    tt_model_destroy(m);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

TT_TEST(a_context_that_leaves_no_room_is_named_or_counted) {
    static const int lengths[4] = {4, 2, 3, 2};
    int32_t words[40];
    tt_context *ctx = tt_create(NULL);
    tt_model *m = small_model(ctx, 5, 16);
    tt_rollouts all;
    tt_request contexts[4];
    tt_scoring s = TT_INIT;
    float got[11];
    int i, skipped = 0;
    TT_REQUIRE(m && make_rollouts(ctx, 1, 4, lengths, END, &all) == TT_OK);
    for (i = 0; i < 40; i++) { words[i] = 3 + i % 7; }
    memset(contexts, 0, sizeof contexts);
    for (i = 0; i < 4; i++) {
        contexts[i].prompt = words;
        contexts[i].prompt_length = i == 1 || i == 2 ? 40 : 12;      /* 12 + 4 = 16 just fits */
    }
    s.model = m;
    s.contexts = contexts;
    TT_CHECK_INT(tt_rollouts_logprobs(&all, &s, got, &skipped), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "the context of prompt 0, sample 1 has 40 tokens and its response 2, "
                                     "together above max_position_embeddings 16");
    s.skip_long = 1;
    TT_CHECK_OK(ctx, tt_rollouts_logprobs(&all, &s, got, &skipped));
    TT_CHECK_INT(skipped, 2);
    for (i = 0; i < 11; i++) { TT_CHECK(isnan(got[i]) == (i >= 4 && i < 9)); }
    s.model = NULL;
    TT_CHECK_INT(tt_rollouts_logprobs(&all, &s, got, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "model is NULL");
    tt_rollouts_free(&all);
    tt_model_destroy(m);
    tt_destroy(ctx);
}

/* ---- the methods in the trainer: say the digit of the question ---- */
typedef struct fixture {
    tt_context *ctx;
    tt_test_memory memory;
    tt_tokenizer *tokenizer;
    tt_model *student, *teacher;
    tt_task task;
    tt_teacher says;
    int asked, easy;
} fixture;

static tt_status ask_digit(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    int digit = (int)(index % N_WORDS);
    tt_status status = tt_text_format(question, " %d", digit);
    (void)user;
    (void)split;
    return status == TT_OK ? tt_text_format(answer, " %d", digit) : status;
}

static tt_status judge_digit(void *user, const tt_reward_input *in, float *reward) {
    const fixture *f = (const fixture *)user;
    *reward = in->stopped && (strcmp(in->response, in->answer) == 0 || f->easy) ? 1.0f : 0.0f;
    return TT_OK;
}

static tt_status say_nothing_of_the_even(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    fixture *f = (fixture *)user;
    int i;
    for (i = 0; i < n; i++) {
        f->asked++;
        if ((attempts[i].question[1] - '0') % 2 == 0) { continue; }
        if (tt_text_format(&out[i].reason, " 9 8") != TT_OK) { return TT_ERR_MEM; }
        if (tt_text_format(&out[i].phrase, "%s", attempts[i].question) != TT_OK) { return TT_ERR_MEM; }
        out[i].n_tokens = 3;
    }
    return TT_OK;
}

static int fixture_open(fixture *f, int positions) {
    static const char *const special[] = {"<q>", "<a>", "<end>"};
    static const char *const words[] = {" 0", " 1", " 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9"};
    tt_desc desc = TT_INIT;
    tt_tokenizer_desc t = TT_INIT;
    memset(f, 0, sizeof *f);
    desc.allocator = tt_test_allocator(&f->memory);
    f->ctx = tt_create(&desc);
    t.special_tokens = special;
    t.n_special_tokens = 3;
    f->tokenizer = tt_tokenizer_words(f->ctx, &t, words, N_WORDS);
    f->student = small_model(f->ctx, 1, positions);
    f->teacher = small_model(f->ctx, 2, positions);
    f->task.name = "digit";
    f->task.question = ask_digit;
    f->task.reward = judge_digit;
    f->task.prompt_template = "<q>{question}<a>";
    f->task.end_token = "<end>";
    f->task.user = f;
    f->says.feedback = say_nothing_of_the_even;
    f->says.user = f;
    return f->tokenizer && f->student && f->teacher;
}

static void fixture_close(fixture *f) {
    tt_model_destroy(f->student);
    tt_model_destroy(f->teacher);
    tt_tokenizer_destroy(f->tokenizer);
    tt_destroy(f->ctx);
    TT_CHECK_NO_LEAK(f->memory);
}

static tt_trainer_desc desc_of(fixture *f) {
    tt_trainer_desc d = TT_INIT;
    d.model = f->student;
    d.tokenizer = f->tokenizer;
    d.task = &f->task;
    d.grpo.num_generations = 8;
    d.grpo.max_completion_length = 4;
    d.schedule.lr = 1e-3f;
    d.prompts_per_step = 4;
    d.seed = 3;
    d.think.total_steps = 10;
    d.think.separator = "";
    return d;
}

static void use_short_templates(tt_feedback_setup *s) {
    s->refine = "<q>{question}{response}{reason}{phrase}<a>";
    s->reprompt_template = "{prompt}{solution}{feedback}";
    s->solution_template = "{successful_previous_attempt}";
    s->feedback_template = "{feedback_raw}";
}

/* Every method trains; what it needs and does not find is counted, and no number of a step is NaN. */
TT_TEST(every_method_trains_and_counts_what_it_misses) {
    int k, step;
    for (k = 0; k < TT_N_FEEDBACK_METHODS; k++) {
        fixture f;
        tt_trainer_desc d;
        tt_feedback_setup s = TT_INIT;
        tt_trainer *trainer;
        const tt_feedback_method *m = &tt_feedback_methods[k];
        TT_REQUIRE(fixture_open(&f, 32));
        d = desc_of(&f);
        use_short_templates(&s);
        s.teacher_model = f.teacher;
        d.teacher = &f.says;
        d.grpo.num_iterations = 1 + k % 2;
        TT_CHECK_OK(f.ctx, tt_feedback_apply(f.ctx, m->name, &s, &d));
        trainer = tt_trainer_create(f.ctx, &d);
        if (!TT_CHECK(trainer != NULL)) { printf("  %s\n", tt_error(f.ctx)); }
        TT_REQUIRE(trainer != NULL);
        for (step = 0; step < 3; step++) {
            tt_step_metrics metrics;
            const tt_rollouts *all;
            int i, t, refined = 0, scored = 0, out = 0;
            s.n_scored = s.n_no_context = s.n_too_long = 0;
            TT_REQUIRE(TT_CHECK_OK(f.ctx, tt_trainer_step(trainer, &metrics)));
            TT_CHECK(isfinite(metrics.grpo.loss) && isfinite(metrics.grad_norm));
            all = tt_trainer_rollouts(trainer);
            for (i = 0; i < all->n; i++) {
                const tt_rollout *r = &all->items[i];
                refined += r->off_policy && r->guided;
                scored += r->advantages != NULL;
                out += r->kind[r->prompt_length] == TT_KIND_ENVIRONMENT;
                for (t = 0; r->advantages && t < r->response_length; t++) {
                    TT_CHECK(isfinite(r->advantages[t]));
                }
            }
            TT_CHECK_INT(refined, m->refines ? metrics.think.n_guided : 0);
            TT_CHECK_INT(scored, m->scores ? (int)s.n_scored : 0);
            if (m->scores) { TT_CHECK_INT(s.n_scored + s.n_no_context + s.n_too_long, all->n); }
            TT_CHECK_INT(out, m->scores && !m->routes ? all->n - scored : 0);
            TT_CHECK(!m->scores || m->reads != TT_READS_ATTEMPTS || s.n_no_context > 0);
            TT_CHECK(m->reads == TT_READS_ATTEMPTS || s.n_no_context == 0);
        }
        TT_CHECK(!m->teacher || f.asked > 0);
        tt_trainer_destroy(trainer);
        fixture_close(&f);
    }
}

/* A_t is the teacher's log-prob behind its own context less the student's, token by token. */
TT_TEST(the_advantage_of_a_token_is_what_the_teacher_thinks_of_it) {
    fixture f;
    tt_trainer_desc d;
    tt_feedback_setup s = TT_INIT;
    tt_trainer *trainer;
    const tt_rollouts *all;
    tt_model *before;
    int i, t;
    TT_REQUIRE(fixture_open(&f, 32));
    d = desc_of(&f);
    use_short_templates(&s);
    s.teacher_model = f.teacher;
    TT_CHECK_OK(f.ctx, tt_feedback_apply(f.ctx, "opsd", &s, &d));
    d.grpo.temperature = 0.7f;
    s.grpo.temperature = 0.7f;
    trainer = tt_trainer_create(f.ctx, &d);
    before = tt_model_copy(f.student);
    TT_REQUIRE(trainer && before && tt_trainer_step(trainer, NULL) == TT_OK);
    all = tt_trainer_rollouts(trainer);
    for (i = 0; i < all->n; i++) {
        const tt_rollout *r = &all->items[i];
        int32_t context[4];
        float q[8], o[8];
        memcpy(context, r->tokens, 2 * sizeof *context);      /* <q> digit, and the gold answer before <a> */
        context[2] = r->tokens[1];
        context[3] = r->tokens[2];
        training_logprobs(f.teacher, context, 4, r->tokens + r->prompt_length, r->response_length, q);
        training_logprobs(before, r->tokens, r->prompt_length, r->tokens + r->prompt_length,
                          r->response_length, o);
        for (t = 0; t < r->response_length; t++) {
            TT_CHECK(r->advantages != NULL && r->advantages[t] == q[t] - o[t]);
            TT_CHECK(o[t] == r->sampling_logprobs[t]);
        }
    }
    tt_model_destroy(before);
    tt_trainer_destroy(trainer);
    fixture_close(&f);
}

/* What the student wrote of a guided response keeps the sets that top-p has left; a teacher has none. */
TT_TEST(a_guided_attempt_is_trained_over_the_sets_that_it_was_drawn_from) {
    if (TT_TEST_DEVICE) { TT_SKIP("kept sets are read by the CPU's backend alone"); }
    fixture f;
    tt_trainer_desc d;
    tt_scoring scoring = TT_INIT;
    tt_step_metrics m;
    tt_trainer *trainer;
    const tt_rollouts *all;
    tt_model *before;
    float got[32 * 10];
    int i, t, at = 0, restricted = 0, appended = 0;
    TT_REQUIRE(fixture_open(&f, 32));
    d = desc_of(&f);
    d.teacher = &f.says;
    d.grpo.max_completion_length = 10;
    d.grpo.temperature = scoring.temperature = 0.7f;
    d.grpo.top_p = 0.7f;
    d.grpo.keep_sampling_mask = 1;
    d.think.mask = TT_MASK_APPENDED;
    d.think.init_pct = 1;
    trainer = tt_trainer_create(f.ctx, &d);
    before = tt_model_copy(f.student);
    TT_REQUIRE(trainer && before && TT_CHECK_OK(f.ctx, tt_trainer_step(trainer, &m)));
    TT_CHECK(m.grpo.ratio_min == 1 && m.grpo.ratio_max == 1 && m.grpo.sampling_logp_difference_max == 0);
    all = tt_trainer_rollouts(trainer);
    scoring.model = before;
    TT_CHECK_OK(f.ctx, tt_rollouts_logprobs(all, &scoring, got, NULL));
    for (i = 0; i < all->n; at += all->items[i++].response_length) {
        const tt_rollout *r = &all->items[i];
        int own = r->guided ? r->attempt_length : r->response_length;
        float whole[10];
        TT_CHECK_BYTES(got + at, r->sampling_logprobs, (size_t)own * sizeof(float));
        training_logprobs(before, r->tokens, r->prompt_length, r->tokens + r->prompt_length,
                          r->response_length, whole);
        for (t = 0; r->guided && t < own; t++) { restricted += got[at + t] != whole[t]; }
        for (t = own; t < r->response_length; t++, appended++) { TT_CHECK(got[at + t] == whole[t]); }
    }
    TT_CHECK(restricted > 10 && appended > 10);
    tt_model_destroy(before);
    tt_trainer_destroy(trainer);
    fixture_close(&f);
}

/* Where nothing can be distilled, the step is empty, said so, and not an error. */
TT_TEST(without_a_right_sibling_or_feedback_nothing_is_learnt) {
    fixture f;
    tt_trainer_desc d;
    tt_feedback_setup s = TT_INIT;
    tt_trainer *trainer;
    tt_step_metrics m;
    TT_REQUIRE(fixture_open(&f, 32));
    d = desc_of(&f);
    use_short_templates(&s);
    s.teacher_model = f.teacher;
    s.success_reward_threshold = 2;          /* nobody reaches it */
    TT_CHECK_OK(f.ctx, tt_feedback_apply(f.ctx, "sdpo", &s, &d));
    trainer = tt_trainer_create(f.ctx, &d);
    TT_REQUIRE(trainer && TT_CHECK_OK(f.ctx, tt_trainer_step(trainer, &m)));
    TT_CHECK_INT(s.n_no_context, 32);
    TT_CHECK_INT(s.n_scored, 0);
    TT_CHECK(m.grad_norm == 0 && m.grpo.loss == 0);
    tt_trainer_destroy(trainer);
    fixture_close(&f);
}

/* A teacher's context that is longer than its positions: counted, and the response left out. */
TT_TEST(a_teachers_context_beyond_its_positions_is_counted) {
    fixture f;
    tt_trainer_desc d;
    tt_feedback_setup s = TT_INIT;
    tt_trainer *trainer;
    TT_REQUIRE(fixture_open(&f, 8));
    d = desc_of(&f);
    use_short_templates(&s);
    s.solution_template = " 1 2 3 4 5 6 7 8{successful_previous_attempt}";
    s.teacher_model = f.teacher;
    TT_CHECK_OK(f.ctx, tt_feedback_apply(f.ctx, "opsd", &s, &d));
    trainer = tt_trainer_create(f.ctx, &d);
    TT_REQUIRE(trainer && TT_CHECK_OK(f.ctx, tt_trainer_step(trainer, NULL)));
    TT_CHECK_INT(s.n_too_long, 32);
    tt_trainer_destroy(trainer);
    fixture_close(&f);
}

static tt_status judge_without_a_word(void *user, const tt_reward_input *in, tt_outcome *out) {
    (void)user;
    (void)in;
    out->reflects = 1;
    return TT_ERR_IO;
}

/* By its own status and not by an older error; without a count all the same. */
TT_TEST(a_failing_judge_is_counted_where_there_is_a_count) {
    fixture f;
    tt_reward_input in = TT_INIT;
    tt_reward_errors errors = TT_INIT;
    int k;
    TT_REQUIRE(fixture_open(&f, 32));
    f.task.judge = judge_without_a_word;
    in.response = in.answer = " 3";
    in.response_size = 2;
    for (k = 0; k < 2; k++) {
        tt_outcome o;
        tt_fail(f.ctx, TT_ERR_IO, "an older error");
        TT_CHECK_OK(f.ctx, tt_judge(f.ctx, &f.task, &in, 1, k ? NULL : &errors, &o));
        TT_CHECK(!o.reflects && !o.final_right && o.behaviour == TT_NO_REFLECTION);
        TT_CHECK_STR(tt_error(f.ctx), "");
    }
    TT_CHECK_INT(errors.n, 1);
    TT_CHECK_INT(errors.status, TT_ERR_IO);
    TT_CHECK_CONTAINS(errors.text, "reward digit of prompt 0, sample 0: ");
    TT_CHECK_CONTAINS(errors.text, tt_status_name(TT_ERR_IO));
    fixture_close(&f);
}

TT_TEST(an_unknown_method_and_what_one_misses_are_named) {
    fixture f;
    tt_trainer_desc d;
    tt_feedback_setup s = TT_INIT;
    TT_REQUIRE(fixture_open(&f, 32));
    d = desc_of(&f);
    TT_CHECK_INT(tt_feedback_apply(f.ctx, "sdpi", &s, &d), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(f.ctx), "method is \"sdpi\", expected one of thinktuning, critique_grpo, "
                                       "rltf_sd, sdpo, opsd, opd, srpo");
    TT_CHECK_INT(tt_feedback_apply(f.ctx, "srpo", &s, &d), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(f.ctx), "srpo wants desc.teacher, which is NULL");
    TT_CHECK_INT(tt_feedback_apply(f.ctx, "opd", &s, &d), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(f.ctx), "opd wants setup.teacher_model, which is NULL");
    fixture_close(&f);
}

TT_MAIN(methods_have_the_golden_values, the_raw_ratio_is_measured_before_any_bound,
        an_advantage_that_is_no_number_is_refused_by_place,
        a_response_is_scored_behind_any_context_as_training_would,
        a_context_that_leaves_no_room_is_named_or_counted, every_method_trains_and_counts_what_it_misses,
        the_advantage_of_a_token_is_what_the_teacher_thinks_of_it,
        without_a_right_sibling_or_feedback_nothing_is_learnt,
        a_teachers_context_beyond_its_positions_is_counted,
        a_guided_attempt_is_trained_over_the_sets_that_it_was_drawn_from,
        a_failing_judge_is_counted_where_there_is_a_count, an_unknown_method_and_what_one_misses_are_named)
