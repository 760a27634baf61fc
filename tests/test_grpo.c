/* Chapter 10: advantages, token losses and the loss of a batch, against the values of tests/golden/rl.json. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "../examples/losses.h"
#include "../examples/feedback.h"
#include "tt_test.h"
#include "rollouts.h"

enum { ROWS = 3, END = 9 };      /* sequences of the golden batch; the token that ends a response */

typedef struct golden { tt_context *ctx; tt_test_memory memory; tt_text text; tt_json *root; const tt_json *in; } golden;

static void golden_open(golden *g) {
    tt_desc desc = TT_INIT;
    memset(g, 0, sizeof *g);
    desc.allocator = tt_test_allocator(&g->memory);
    g->ctx = tt_create(&desc);
    g->text.ctx = g->ctx;
    TT_CHECK_OK(g->ctx, tt_file_read(g->ctx, "tests/golden/rl.json", &g->text));
    g->root = tt_json_parse(g->ctx, g->text.data, g->text.size);
    g->in = tt_json_get(g->root, "inputs");
    TT_CHECK(g->in != NULL);
}
static void golden_close(golden *g) {
    tt_json_free(g->ctx, g->root);
    tt_text_free(&g->text);
    tt_destroy(g->ctx);
    TT_CHECK_NO_LEAK(g->memory);
}
static tt_tensor *grpo_loss(tt_context *ctx, tt_tensor *logprobs, tt_tensor *entropy, const tt_rollouts *all, const int *indices, int n, const tt_grpo_config *c, tt_grpo_metrics *m) {
    tt_loss_batch batch = TT_INIT;
    batch.rollouts = all;
    batch.indices = indices;
    batch.n = n;
    return tt_grpo_loss(ctx, logprobs, entropy, &batch, c, m);
}
static void set_kind(tt_rollout *r, tt_token_kind kind) { memset(r->kind + r->prompt_length, kind, (size_t)r->response_length); }
static unsigned char *kind_at(tt_rollout *r, int t) { return &r->kind[r->prompt_length + t]; }
/* Token t is in the loss or not. */
static void keep(tt_rollout *r, int t, int kept) { *kind_at(r, t) = (unsigned char)(kept ? TT_KIND_STUDENT : TT_KIND_ENVIRONMENT); }
/* The losses of losses.h and feedback.h behind those of the header. weighs: a factor of -A log p is constant for the
 * gradient, and depends on log p - log p_old alone. */
enum {
    LOSS_SAPO = TT_LOSS_RLOO + 1, LOSS_VESPO, LOSS_DRO, LOSS_DPPO, LOSS_CLIP_COV, LOSS_KL_COV, LOSS_SDPO, LOSS_RLTF,
    N_LOSSES
};
static const struct { const char *name; tt_token_loss_fn loss; int weighs; } more_losses[N_LOSSES - LOSS_SAPO] = {
    {"sapo", tt_loss_sapo, 0}, {"vespo", tt_loss_vespo, 1}, {"dro", tt_loss_dro, 0}, {"dppo", tt_loss_dppo, 1},
    {"covariance", tt_loss_covariance, 0}, {"covariance", tt_loss_covariance, 0}, {"sdpo", tt_loss_sdpo, 1},
    {"rltf", tt_loss_rltf, 0}
};

static void use_loss(tt_grpo_config *c, int loss, tt_covariance *covariance) {
    int chooses = loss == LOSS_CLIP_COV || loss == LOSS_KL_COV;
    c->loss = loss < LOSS_SAPO ? (tt_loss_type)loss : TT_LOSS_PPO_CLIP;
    c->token_loss = loss < LOSS_SAPO ? NULL : more_losses[loss - LOSS_SAPO].loss;
    c->token_loss_begin = chooses ? tt_covariance_begin : NULL;
    c->token_loss_user = chooses ? covariance : NULL;
    covariance->kl = loss == LOSS_KL_COV;
}

/* The golden batch: three responses of 4, 2 and 3 tokens. */
static int golden_rows(golden *g, tt_rollouts *all, int with_old, int with_ref) {
    static const int lengths[ROWS] = {4, 2, 3};
    int i, t;
    if (!TT_CHECK_OK(g->ctx, make_rollouts(g->ctx, 1, ROWS, lengths, END, all))) { return 0; }
    for (i = 0; i < ROWS; i++) {
        tt_rollout *r = &all->items[i];
        r->advantage = (float)value(tt_json_get(g->in, "adv"), i);
        if (with_old) { r->old_logprobs = (float *)tt_alloc(g->ctx, (size_t)lengths[i], sizeof(float)); }
        if (with_ref) { r->ref_logprobs = (float *)tt_alloc(g->ctx, (size_t)lengths[i], sizeof(float)); }
        for (t = 0; t < lengths[i]; t++) {
            if (with_old) { r->old_logprobs[t] = (float)value2(tt_json_get(g->in, "old"), i, t); }
            if (with_ref) { r->ref_logprobs[t] = (float)value2(tt_json_get(g->in, "ref"), i, t); }
        }
    }
    return 1;
}
/* Loss and gradient of rows indices[0..n) through the graph; gradients go to grads[row][token]. */
static double batch_loss(golden *g, const tt_rollouts *all, const int *indices, int n, const tt_grpo_config *c, double grads[ROWS][4], tt_grpo_metrics *m) {
    float values[16] = {0}, gradient[16];
    int size = 0, i, t;
    tt_tensor *logprobs, *loss;
    double out;
    for (i = 0; i < n; i++) {
        for (t = 0; t < all->items[indices[i]].response_length; t++) { values[size++] = (float)value2(tt_json_get(g->in, "logp"), indices[i], t); }
    }
    logprobs = tt_constant(g->ctx, 1, &size, values);
    logprobs->requires_grad = 1;
    loss = grpo_loss(g->ctx, logprobs, NULL, all, indices, n, c, m);
    TT_CHECK_OK(g->ctx, tt_backward(g->ctx, loss));
    TT_CHECK_OK(g->ctx, tt_tensor_get_grad(logprobs, gradient));
    for (size = 0, i = 0; i < n; i++) {
        for (t = 0; t < all->items[indices[i]].response_length; t++) { grads[indices[i]][t] = (double)gradient[size++]; }
    }
    out = tt_item(loss);
    tt_step_reset(g->ctx);
    return out;
}
/* As one batch, and as three micro-batches, which must add up to it. */
static void check_batch(golden *g, const tt_rollouts *all, const tt_grpo_config *c, const tt_json *want) {
    static const int rows[ROWS] = {0, 1, 2};
    double whole[ROWS][4] = {{0}}, parts[ROWS][4] = {{0}}, loss, sum = 0;
    tt_grpo_metrics one, three;
    int i, t;
    if (!TT_CHECK(want != NULL)) { return; }
    memset(&one, 0, sizeof one);
    memset(&three, 0, sizeof three);
    loss = batch_loss(g, all, rows, ROWS, c, whole, &one);
    for (i = 0; i < ROWS; i++) { sum += batch_loss(g, all, &rows[i], 1, c, parts, &three); }
    TT_CHECK_NEAR(loss, tt_json_number(want, "loss", 99), 1e-6);
    TT_CHECK_NEAR(sum, loss, 1e-6);
    for (i = 0; i < ROWS; i++) {
        for (t = 0; t < all->items[i].response_length; t++) {
            TT_CHECK_NEAR(whole[i][t], value2(tt_json_get(want, "dloss_dlogp"), i, t), 1e-6);
            TT_CHECK(whole[i][t] == parts[i][t]);
        }
    }
    TT_CHECK_NEAR(one.loss, three.loss, 1e-12);
    TT_CHECK_NEAR(one.ppo_kl, three.ppo_kl, 1e-12);
    TT_CHECK_NEAR(one.clip_high, three.clip_high, 1e-12);
    TT_CHECK_NEAR(one.aas_factor_mean, three.aas_factor_mean, 1e-12);
    TT_CHECK_INT(one.n_tokens, 9);
    TT_CHECK_INT(three.n_tokens, 9);
}
static tt_grpo_config golden_config(const golden *g) {
    tt_grpo_config c = TT_INIT;
    c.epsilon_low = (float)tt_json_number(g->in, "eps_lo", 0);
    c.epsilon_high = (float)tt_json_number(g->in, "eps_hi", 0);
    c.max_completion_length = (int)tt_json_number(g->in, "Lmax", 0);
    c.dual_clip = -1;
    return c;
}

/* ---- advantages ---- */
static void check_advantages(golden *g, const char *name, tt_advantage_type type, tt_scale_rewards scale, float eps) {
    const tt_json *want = tt_json_get(tt_json_get(g->root, "advantages"), name);
    tt_grpo_config c = TT_INIT;
    tt_rollouts all;
    int lengths[8], i;
    if (!TT_CHECK(want != NULL)) { return; }
    c.advantage = type;
    c.scale_rewards = scale;
    c.advantage_eps = eps;
    for (i = 0; i < 8; i++) { lengths[i] = (int)value(tt_json_get(g->in, "len"), i); }
    if (!TT_CHECK_OK(g->ctx, make_rollouts(g->ctx, 2, 4, lengths, END, &all))) { return; }
    for (i = 0; i < 8; i++) { all.items[i].rewards[0] = (float)value(tt_json_get(g->in, "reward"), i); }
    TT_CHECK_OK(g->ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    for (i = 0; i < 8; i++) {
        if (!TT_CHECK_NEAR(all.items[i].advantage, value(want, i), 1e-6)) { printf("  advantage %s, sample %d\n", name, i); }
    }
    tt_rollouts_free(&all);
}
TT_TEST(advantages_have_the_golden_values) {
    golden g;
    golden_open(&g);
    check_advantages(&g, "verl_grpo_eps1e-6", TT_ADV_GRPO, TT_SCALE_GROUP, 0);
    check_advantages(&g, "trl_group", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-4f);
    check_advantages(&g, "openrlhf_group_norm_eps1e-9", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-9f);
    check_advantages(&g, "trl_batch", TT_ADV_GRPO, TT_SCALE_BATCH, 1e-4f);
    check_advantages(&g, "trl_none_dr_grpo", TT_ADV_GRPO, TT_SCALE_NONE, 0);
    check_advantages(&g, "rloo", TT_ADV_RLOO, TT_SCALE_GROUP, 0);
    check_advantages(&g, "opo", TT_ADV_OPO, TT_SCALE_GROUP, 0);
    check_advantages(&g, "passk_best_minus_second", TT_ADV_PASSK, TT_SCALE_GROUP, 0);
    check_advantages(&g, "passk_best_minus_second_unnormalised", TT_ADV_PASSK, TT_SCALE_NONE, 0);
    check_advantages(&g, "reinforce_pp_baseline_verl", TT_ADV_REINFORCE_PP_BASELINE, TT_SCALE_GROUP, 0);
    check_advantages(&g, "gpg_alpha", TT_ADV_GPG, TT_SCALE_GROUP, 0);
    golden_close(&g);
}
TT_TEST(equal_rewards_and_groups_of_one_give_exactly_zero) {
    static const int lengths[10] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m;
    int i;
    TT_REQUIRE(make_rollouts(ctx, 1, 10, lengths, END, &all) == TT_OK);
    for (i = 0; i < 10; i++) { all.items[i].rewards[0] = 0.1f; }
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, &m));
    for (i = 0; i < 10; i++) { TT_CHECK(all.items[i].advantage == 0); }
    TT_CHECK_NEAR(m.frac_reward_zero_std, 1, 0);
    TT_CHECK_NEAR(m.reward, 0.1, 1e-7);
    tt_rollouts_free(&all);
    TT_REQUIRE(make_rollouts(ctx, 2, 1, lengths, END, &all) == TT_OK);
    all.items[0].rewards[0] = 0.7f;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK(all.items[0].advantage == 0 && all.items[1].advantage == 0);
    c.advantage = TT_ADV_RLOO;
    TT_CHECK_INT(tt_grpo_advantages(&all, &c, NULL, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "num_generations is 1, expected >= 2 for RLOO");
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
TT_TEST(rewards_are_weighted_and_may_abstain) {
    static const int lengths[2] = {1, 1};
    static const float weights[2] = {1, 0.5f}, none[2] = {1, 0};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    all.n_rewards = 2;
    all.items[0].rewards[0] = 1;
    all.items[0].rewards[1] = 4;
    all.items[1].rewards[0] = (float)NAN;
    all.items[1].rewards[1] = 1;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, weights, NULL));
    TT_CHECK_NEAR(all.items[0].reward, 3, 0);
    TT_CHECK_NEAR(all.items[1].reward, 0.5, 0);
    all.items[1].rewards[1] = (float)INFINITY;
    TT_CHECK_INT(tt_grpo_advantages(&all, &c, weights, NULL), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(ctx), "reward of prompt 0, sample 1 is inf, expected a finite number");
    TT_CHECK_INT(tt_grpo_advantages(&all, &c, none, NULL), TT_ERR_NUMBER);      /* 0 times infinity */
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}

/* Sample 2 of group 0 is scored by nobody: the others are as if it were not there. */
TT_TEST(an_unscored_response_leaves_the_statistics) {
    static const int five[5] = {1, 2, 3, 1, 2}, four[4] = {1, 2, 1, 2};
    static const float scores[4] = {1, 0, 0.5f, 0};
    static const tt_advantage_type types[] = {TT_ADV_GRPO, TT_ADV_RLOO, TT_ADV_OPO, TT_ADV_PASSK, TT_ADV_LUFFY, TT_ADV_GDPO};
    tt_context *ctx = tt_create(NULL);
    size_t k;
    for (k = 0; k < sizeof types / sizeof *types; k++) {
        tt_rollouts with, without;
        tt_grpo_config c = TT_INIT;
        tt_grpo_metrics m = TT_INIT, n = TT_INIT;
        int i;
        c.advantage = types[k];
        TT_REQUIRE(make_rollouts(ctx, 1, 5, five, END, &with) == TT_OK && make_rollouts(ctx, 1, 4, four, END, &without) == TT_OK);
        for (i = 0; i < 4; i++) { with.items[i + (i > 1)].rewards[0] = without.items[i].rewards[0] = scores[i]; }
        with.items[2].rewards[0] = (float)NAN;
        TT_CHECK_OK(ctx, tt_grpo_advantages(&with, &c, NULL, &m));
        TT_CHECK_OK(ctx, tt_grpo_advantages(&without, &c, NULL, &n));
        TT_CHECK(with.items[2].advantage == 0 && isnan(with.items[2].reward));
        for (i = 0; i < 4; i++) { TT_CHECK_NEAR(with.items[i + (i > 1)].advantage, without.items[i].advantage, 1e-6); }
        TT_CHECK_INT(m.n_unscored, 1);
        TT_CHECK_NEAR(m.reward, n.reward, 1e-12);
        TT_CHECK_NEAR(m.rewards[0], 0.375, 1e-12);
        tt_rollouts_free(&with);
        tt_rollouts_free(&without);
    }
    tt_destroy(ctx);
}
TT_TEST(length_and_divergence_cost_reward) {
    static const int lengths[2] = {4, 2};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m = TT_INIT;
    int i, t;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    c.max_completion_length = 5;
    c.overlong_cache = 2;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, &m));
    TT_CHECK_NEAR(all.items[0].reward, -0.5, 0);      /* 4 tokens, one more than 5 - 2 */
    TT_CHECK_NEAR(all.items[1].reward, 0, 0);
    TT_CHECK_NEAR(m.overlong, -0.25, 0);
    c.kl_in_reward = 1;
    c.beta = 0.5f;
    c.kl = TT_KL_K2;
    TT_CHECK_INT(tt_grpo_advantages(&all, &c, NULL, &m), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "kl_in_reward is 1 but prompt 0, sample 0 has no old_logprobs");
    for (i = 0; i < 2; i++) {
        all.items[i].old_logprobs = (float *)tt_alloc(ctx, (size_t)lengths[i], sizeof(float));
        all.items[i].ref_logprobs = (float *)tt_alloc(ctx, (size_t)lengths[i], sizeof(float));
        for (t = 0; t < lengths[i]; t++) { all.items[i].ref_logprobs[t] = (float)(i + 1); }
    }
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, &m));
    TT_CHECK_NEAR(all.items[0].reward, -0.5 - 0.5 * 4 * 0.5, 1e-7);
    TT_CHECK_NEAR(all.items[1].reward, -0.5 * 2 * 2, 1e-7);
    TT_CHECK_NEAR(m.reward_kl, (1 + 2) / 2.0, 1e-7);
    {   /* and then not in the loss */
        static const int indices[2] = {0, 1};
        static const float values[6] = {0};
        int n = 6;
        all.items[0].advantage = all.items[1].advantage = 0;
        memset(&m, 0, sizeof m);
        TT_CHECK_NEAR(tt_item(grpo_loss(ctx, tt_constant(ctx, 1, &n, values), NULL, &all, indices, 2, &c, &m)), 0, 0);
        TT_CHECK_NEAR(m.kl, (4 * 0.5 + 2 * 2.0) / 6, 1e-7);      /* but measured */
    }
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* Every choice has a row with all it needs, is found by its name, and an unknown name is answered with those that are known. */
TT_TEST(choices_are_known_by_name) {
    static const struct { const char *field; int n; } fields[] = {
        {"advantage", TT_ADV_LUFFY + 1}, {"loss", TT_LOSS_RLOO + 1}, {"aggregation", TT_TOKEN_SUM + 1},
        {"kl", TT_KL_K3_RATIO + 1}, {"mismatch", TT_MISMATCH_GEOMETRIC_MASK + 1}, {"aas", TT_AAS_OFF + 1}
    };
    tt_context *ctx = tt_create(NULL);
    int k, i, value;
    for (k = 0; k < (int)(sizeof fields / sizeof *fields); k++) {
        for (i = 0; i < fields[k].n; i++) {
            const tt_choice *choice = tt_grpo_choice(fields[k].field, i);
            TT_REQUIRE(choice != NULL);
            TT_CHECK(choice->name[0] && choice->formula[0] && choice->source != NULL);
            value = -1;
            TT_CHECK_OK(ctx, tt_grpo_choose(ctx, fields[k].field, choice->name, &value));
            TT_CHECK_INT(value, i);
        }
        TT_CHECK(tt_grpo_choice(fields[k].field, fields[k].n) == NULL && tt_grpo_choice(fields[k].field, -1) == NULL);
    }
    TT_CHECK(tt_grpo_choice("colour", 0) == NULL);
    TT_CHECK_INT(tt_grpo_choose(ctx, "kl", "k4", &value), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "kl is \"k4\", expected one of k3, k1, k2, k3_clamp, k3_ratio");
    tt_destroy(ctx);
}
TT_TEST(settings_out_of_range_are_named) {
    static const int lengths[2] = {1, 1}, indices[2] = {0, 1};
    static const float values[2] = {0};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c;
    int n = 2;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
#define EXPECT_RANGE(field, bad, text)                                             \
    do {                                                                           \
        memset(&c, 0, sizeof c);                                                   \
        c.field = bad;                                                             \
        TT_CHECK_INT(tt_grpo_advantages(&all, &c, NULL, NULL), TT_ERR_ARG);        \
        TT_CHECK_CONTAINS(tt_error(ctx), text);                                    \
        TT_CHECK(grpo_loss(ctx, tt_constant(ctx, 1, &n, values), NULL, &all, indices, 2, &c, NULL) == NULL); \
        TT_CHECK_CONTAINS(tt_error(ctx), text);                                    \
        tt_step_reset(ctx);                                                        \
    } while (0)
    EXPECT_RANGE(loss, (tt_loss_type)17, "loss is 17, expected 0 .. 7");
    EXPECT_RANGE(epsilon_low, 1.5f, "epsilon_low is 1.5, expected 0 .. 1");
    EXPECT_RANGE(beta, -1, "beta is -1, expected 0");
    EXPECT_RANGE(temperature, (float)NAN, "temperature is nan");
    EXPECT_RANGE(mismatch_low, 5, "mismatch_low is 5, expected 0 .. 3");
    EXPECT_RANGE(top_entropy_quantile, 1.5f, "top_entropy_quantile is 1.5, expected 0 .. 1");
    EXPECT_RANGE(overlong_cache, 500, "overlong_cache is 500, expected 0 .. 128");
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}

/* ---- losses ---- */
TT_TEST(token_losses_have_the_golden_values) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    const tt_json *losses;
    int i;
    golden_open(&g);
    losses = tt_json_get(g.root, "token_losses_token_mean");
    TT_REQUIRE(golden_rows(&g, &all, 1, 0));
    c = golden_config(&g);
    check_batch(&g, &all, &c, tt_json_get(losses, "ppo_clip"));
    c.delta = 1.5f;
    check_batch(&g, &all, &c, tt_json_get(losses, "ppo_two_sided_delta1.5"));
    c = golden_config(&g);
    c.epsilon_high = 0;
    c.dual_clip = 0;
    check_batch(&g, &all, &c, tt_json_get(losses, "ppo_clip_sym_dual3"));
    c = golden_config(&g);
    c.loss = TT_LOSS_CISPO;
    check_batch(&g, &all, &c, tt_json_get(losses, "cispo_trl_cap5"));
    c.cispo_epsilon_max = 0.2f;
    check_batch(&g, &all, &c, tt_json_get(losses, "cispo_trl_cap0.2_default_trap"));
    c.token_loss = tt_loss_sapo;
    check_batch(&g, &all, &c, tt_json_get(losses, "sapo"));
    c.token_loss = NULL;
    c.loss = TT_LOSS_REINFORCE;
    check_batch(&g, &all, &c, tt_json_get(losses, "gpg_reinforce"));
    c = golden_config(&g);
    c.aas = TT_AAS_LUFFY;
    for (i = 0; i < ROWS; i++) { set_kind(&all.items[i], TT_KIND_GUIDED); }
    check_batch(&g, &all, &c, tt_json_get(losses, "luffy_shape_0.1"));
    tt_rollouts_free(&all);
    TT_REQUIRE(golden_rows(&g, &all, 0, 0));      /* no old log-probs: those of now, ratio 1 */
    c = golden_config(&g);
    check_batch(&g, &all, &c, tt_json_get(losses, "on_policy_ratio1"));
    tt_rollouts_free(&all);
    golden_close(&g);
}
TT_TEST(kl_estimators_have_the_golden_values) {
    static const char *const names[3] = {"kl_k3", "kl_k1", "kl_k2"};
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    int i, k;
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all, 1, 1));
    c = golden_config(&g);
    c.beta = 0.04f;
    check_batch(&g, &all, &c, tt_json_get(tt_json_get(g.root, "token_losses_token_mean"), "ppo_clip_plus_beta_k3"));
    for (i = 0; i < ROWS; i++) { all.items[i].advantage = 0; }
    c.beta = 1;
    for (k = 0; k < 3; k++) {
        c.kl = (tt_kl_type)k;
        check_batch(&g, &all, &c, tt_json_get(tt_json_get(g.root, "token_losses_token_mean"), names[k]));
    }
    tt_rollouts_free(&all);
    golden_close(&g);
}
TT_TEST(aggregations_have_the_golden_values) {
    static const struct { const char *name; tt_aggregation how; } forms[] = {
        {"grpo", TT_SEQ_MEAN_TOKEN_MEAN}, {"seq-mean-token-mean", TT_SEQ_MEAN_TOKEN_MEAN}, {"dapo", TT_TOKEN_MEAN}, {"token-mean", TT_TOKEN_MEAN},
        {"seq-mean-token-sum", TT_SEQ_MEAN_TOKEN_SUM}, {"dr_grpo", TT_DR_GRPO}
    };
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    size_t i;
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all, 1, 0));
    c = golden_config(&g);
    for (i = 0; i < sizeof forms / sizeof *forms; i++) {
        c.aggregation = forms[i].how;
        check_batch(&g, &all, &c, tt_json_get(tt_json_get(g.root, "aggregation_of_ppo_clip"), forms[i].name));
    }
    c.loss = TT_LOSS_GSPO;
    c.aggregation = TT_SEQ_MEAN_TOKEN_MEAN;
    check_batch(&g, &all, &c, tt_json_get(tt_json_get(g.root, "gspo_trl"), "grpo"));
    c.aggregation = TT_TOKEN_MEAN;
    check_batch(&g, &all, &c, tt_json_get(tt_json_get(g.root, "gspo_trl"), "dapo"));
    tt_rollouts_free(&all);
    golden_close(&g);
}
TT_TEST(truncated_responses_leave_loss_and_denominators) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    double grads[ROWS][4] = {{0}};
    static const int rows[ROWS] = {0, 1, 2};
    tt_grpo_metrics m;
    int t;
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all, 0, 0));
    c = golden_config(&g);
    c.mask_truncated_completions = 1;
    all.items[0].stopped = 0;
    memset(&m, 0, sizeof m);
    batch_loss(&g, &all, rows, ROWS, &c, grads, &m);
    TT_CHECK_INT(m.n_tokens, 5);
    for (t = 0; t < 4; t++) { TT_CHECK(grads[0][t] == 0); }
    TT_CHECK_NEAR(grads[1][0], 1.0 / 5, 1e-7);
    tt_rollouts_free(&all);
    golden_close(&g);
}

/* ---- advantage-aware shaping ---- */
TT_TEST(shaping_has_the_golden_values) {
    golden g;
    const tt_json *aas, *at;
    int n = 0;
    golden_open(&g);
    aas = tt_json_get(g.root, "aas");
    for (at = tt_json_get(aas, "grid")->child; at; at = at->next, n++) {
        tt_grpo_config c = TT_INIT;
        double p = tt_json_number(at, "p", 0), a = tt_json_number(at, "A", 0), want = tt_json_number(at, "loss", 0);
        tt_token_loss x;
        c.aas = strcmp(tt_json_text(at, "variant", ""), "formula") == 0 ? TT_AAS_FORMULA : TT_AAS_RELEASED;
        x = tt_grpo_token_loss(&c, log(p), log(p) - 0.05, (double)NAN, a, TT_KIND_GUIDED);      /* the fallback sees a ratio of e^0.05 */
        TT_CHECK_NEAR(x.loss, want, 1e-4 * fabs(want) + 1e-6);       /* gamma is a float: 1e-4 near the pole */
        TT_CHECK_NEAR(x.dloss, tt_json_number(at, "dloss_dlogp", 0), 1e-4 * fabs(want) + 1e-6);
    }
    TT_CHECK_INT(n, 120);
    for (at = tt_json_get(aas, "fallback_clipped")->child; at; at = at->next) {
        tt_grpo_config c = TT_INIT;
        tt_token_loss x = tt_grpo_token_loss(&c, tt_json_number(at, "logp", 0), tt_json_number(at, "old", 0), (double)NAN, tt_json_number(at, "A", 0), TT_KIND_GUIDED);
        TT_CHECK_NEAR(x.loss, tt_json_number(at, "loss", 0), 1e-6);
        TT_CHECK_NEAR(x.dloss, tt_json_number(at, "dloss_dlogp", 0), 1e-6);
        TT_CHECK_INT(x.fallback, 1);
    }
    golden_close(&g);
}
TT_TEST(gamma_is_the_texts_or_the_released_codes) {
    golden g;
    const tt_json *at;
    int k;
    golden_open(&g);
    for (k = 0; k < 2; k++) {
        for (at = tt_json_get(tt_json_get(tt_json_get(g.root, "aas"), "gamma"), k ? "formula" : "released")->child; at; at = at->next) {
            tt_grpo_config c = TT_INIT;
            c.aas = k ? TT_AAS_FORMULA : TT_AAS_RELEASED;
            c = tt_grpo_resolve(&c);
            TT_CHECK_NEAR(tti_aas_gamma(&c, atof(at->key)), at->number, 1e-9);
        }
    }
    golden_close(&g);
}
TT_TEST(guided_rows_have_the_golden_values) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    int k, i;
    golden_open(&g);
    for (k = 0; k < 2; k++) {
        const char *name = k ? "formula" : "released";
        TT_REQUIRE(golden_rows(&g, &all, 1, 0));
        c = golden_config(&g);
        c.epsilon_high = 0;
        c.dual_clip = 0;
        c.aas = k ? TT_AAS_FORMULA : TT_AAS_RELEASED;
        set_kind(&all.items[0], TT_KIND_GUIDED);
        check_batch(&g, &all, &c, tt_json_get(tt_json_get(tt_json_get(g.root, "aas"), "mixed_batch_row0_guided_rows12_on_policy_dual3"), name));
        for (i = 0; i < ROWS; i++) { set_kind(&all.items[i], TT_KIND_GUIDED); }
        check_batch(&g, &all, &c, tt_json_get(tt_json_get(tt_json_get(g.root, "aas"), "guided_batch_token_mean"), name));
        tt_rollouts_free(&all);
    }
    golden_close(&g);
}
TT_TEST(the_pole_of_the_released_factor_is_finite) {
    tt_grpo_config c = TT_INIT;
    double p;
    for (p = 0.00099; p < 0.00101; p += 1e-8) { TT_CHECK(isfinite(tt_grpo_token_loss(&c, log(p), log(p), (double)NAN, 1, TT_KIND_GUIDED).loss)); }
    TT_CHECK(isfinite(tt_grpo_token_loss(&c, log((double)0.001f), 0, (double)NAN, 1, TT_KIND_GUIDED).loss));
    TT_CHECK_NEAR(tt_grpo_token_loss(&c, log(0.0009), 0, (double)NAN, 1, TT_KIND_GUIDED).factor, 1.0001, 1e-9);
}

/* ---- gradients ---- */
/* Every loss at points off its kinks. What is held constant in the formula (CISPO's weight, AAS's denominator)
 * makes the slope differ from that of the value: there the slope is known in closed form. */
TT_TEST(slopes_are_those_of_the_losses) {
    tt_rng rng = {7, 0, 0};
    static const int losses[] = {TT_LOSS_PPO_CLIP, TT_LOSS_CISPO, LOSS_SAPO, TT_LOSS_GSPO, TT_LOSS_REINFORCE};
    tt_covariance unused = TT_INIT;
    int k, aas, guided, i, n = 0;
    for (k = 0; k < (int)(sizeof losses / sizeof *losses); k++) {
        for (aas = TT_AAS_RELEASED; aas <= TT_AAS_OFF; aas++) {
            for (guided = 0; guided < 2; guided++) {
                for (i = 0; i < 60; i++) {
                    tt_grpo_config c = TT_INIT;
                    double l = -4 * tt_rng_uniform(&rng), o = l + tt_rng_uniform(&rng) - 0.5, f = l + tt_rng_uniform(&rng) - 0.5, a = 3 * tt_rng_uniform(&rng) - 1.5, h = 1e-6;
                    tt_token_loss x, up, down;
                    int constant = (guided && aas < TT_AAS_LUFFY) || (losses[k] == TT_LOSS_CISPO && !(guided && aas == TT_AAS_LUFFY));
                    use_loss(&c, losses[k], &unused);
                    c.aas = (tt_aas)aas;
                    c.beta = 0.3f;
                    c.kl = (tt_kl_type)(i % 3);
                    c.delta = i % 4 == 0 ? 1.3f : 0;
                    x = tt_grpo_token_loss(&c, l, o, f, a, guided ? TT_KIND_GUIDED : TT_KIND_STUDENT);
                    up = tt_grpo_token_loss(&c, l + h, o, f, a, guided ? TT_KIND_GUIDED : TT_KIND_STUDENT);
                    down = tt_grpo_token_loss(&c, l - h, o, f, a, guided ? TT_KIND_GUIDED : TT_KIND_STUDENT);
                    if (fabs(exp(l - o) - 0.8) < 1e-4 || fabs(exp(l - o) - 1.2) < 1e-4 || fabs(exp(l - o) - 1.3) < 1e-4) { continue; }
                    if (constant) {
                        tt_token_loss plain;
                        c.beta = 0;
                        plain = tt_grpo_token_loss(&c, l, o, (double)NAN, a, guided ? TT_KIND_GUIDED : TT_KIND_STUDENT);
                        TT_CHECK_NEAR(plain.dloss, guided && aas < TT_AAS_LUFFY && !plain.fallback ? plain.loss : plain.loss / l, 1e-9);
                    } else { TT_CHECK_NEAR(x.dloss, (up.loss - down.loss) / (2 * h), 1e-5); }
                    n++;
                }
            }
        }
    }
    TT_CHECK(n > 2000);
}
/* The public losses of a file are all in more_losses. */
static void check_listed(tt_context *ctx, const char *path) {
    static const char before[] = "static inline void tt_loss_";
    const char *at;
    tt_text text = TT_INIT;
    int k, n = 0;
    text.ctx = ctx;
    TT_REQUIRE(tt_file_read(ctx, path, &text) == TT_OK);
    for (at = strstr(text.data, before); at; at = strstr(at, before), n++) {
        at += sizeof before - 1;
        for (k = 0; k < N_LOSSES - LOSS_SAPO && strncmp(at, more_losses[k].name, strcspn(at, "(")) != 0; k++) {}
        if (!TT_CHECK(k < N_LOSSES - LOSS_SAPO)) { printf("  %s: tt_loss_%.20s\n", path, at); }
    }
    TT_CHECK(n > 0);
    tt_text_free(&text);
}

static int choices(const char *field) {
    int n = 0;
    while (tt_grpo_choice(field, n)) { n++; }
    return n;
}

/* A config of the k-th loss under one choice of everything else, and the golden batch made for it: advantages of
 * tokens or of responses, one token of any kind. */
static tt_grpo_config any_config(golden *g, tt_rollouts *all, tt_covariance *covariance, int k, int how, int kl) {
    static const float advantages[ROWS][4] = {{1.5f, -0.4f, 0.7f, -2}, {-1, 0.3f}, {0.2f, 0.9f, -0.6f}};
    tt_grpo_config c = golden_config(g);
    int i;
    use_loss(&c, k, covariance);
    c.aggregation = (tt_aggregation)how;
    c.kl = (tt_kl_type)kl;
    c.beta = 0.3f;
    c.mismatch = (tt_mismatch)((k + how + kl) % choices("mismatch"));
    c.aas = (tt_aas)(kl % choices("aas"));
    covariance->ratio = 0.4f;
    covariance->low = 1e-3f;
    covariance->high = 5;
    covariance->kl_coef = 0.5f;
    for (i = 0; i < ROWS; i++) {
        TT_CHECK_OK(g->ctx, tt_rollout_advantages(all, i, (k + kl) % 2 ? advantages[i] : NULL));
    }
    *kind_at(&all->items[1], 0) = (unsigned char)(TT_KIND_STUDENT + how % (TT_KIND_ENVIRONMENT - TT_KIND_STUDENT + 1));
    return tt_grpo_resolve(&c);
}

/* The loss of the golden batch, in double, with the log-prob of one token moved by h. What the formula holds constant
 * stays: the weight of a loss that weighs, as p_old and p_sampler are moved along, and p + gamma of shaping, as gamma
 * moves against p of the one shaped token. */
static double moved_loss(golden *g, const tt_rollouts *all, const tt_grpo_config *config, int row, int token, float h,
                         int weighs) {
    static const int rows[ROWS] = {0, 1, 2};
    tt_grpo_config c = *config;
    tt_grpo_metrics m = TT_INIT;
    tt_rollout *r = &all->items[row];
    float values[9], old = r->old_logprobs[token], sampler = r->sampling_logprobs[token], less = 0;
    int n = 0, i, t;
    for (i = 0; i < ROWS; i++) {
        for (t = 0; t < all->items[i].response_length; t++, n++) {
            values[n] = (float)value2(tt_json_get(g->in, "logp"), i, t);
            if (i != row || t != token) { continue; }
            less = (float)(exp((double)values[n]) - exp((double)values[n] + (double)h));
            values[n] += h;
        }
    }
    if (*kind_at(r, token) == TT_KIND_GUIDED || *kind_at(r, token) == TT_KIND_TEACHER) {
        c.gamma_min += less;
        c.gamma_max += less;
    }
    if (weighs) {
        r->old_logprobs[token] += h;
        r->sampling_logprobs[token] += h;
    }
    TT_CHECK(grpo_loss(g->ctx, tt_constant(g->ctx, 1, &n, values), NULL, all, rows, ROWS, &c, &m) != NULL);
    tt_step_reset(g->ctx);
    r->old_logprobs[token] = old;
    r->sampling_logprobs[token] = sampler;
    return m.loss;
}

/* Central differences of the whole batch's loss for every loss, aggregation and divergence; with them go the
 * corrections of the mismatch, the shapings and the kinds of tokens in turn. */
TT_TEST(gradients_are_those_of_the_batch_loss) {
    static const int rows[ROWS] = {0, 1, 2};
    static const float h = 1.0f / 512;
    tt_covariance covariance = TT_INIT;
    golden g;
    tt_rollouts all;
    int checked = 0, kinks = 0, k, how, kl, i, t;
    golden_open(&g);
    check_listed(g.ctx, "examples/losses.h");
    check_listed(g.ctx, "examples/feedback.h");
    TT_CHECK_INT(choices("loss"), LOSS_SAPO);      /* a row behind TT_LOSS_RLOO moves those of more_losses */
    TT_REQUIRE(golden_rows(&g, &all, 1, 1));
    for (t = 0; t < 3; t++) { all.items[2].sampling_logprobs[t] = -1.2f; }
    for (k = 0; k < N_LOSSES; k++) {
        int weighs = k < LOSS_SAPO ? k == TT_LOSS_CISPO || k == TT_LOSS_CISPO_CLAMP : more_losses[k - LOSS_SAPO].weighs;
        for (how = 0; how < choices("aggregation"); how++) {
            for (kl = 0; kl < choices("kl"); kl++) {
                tt_grpo_config c = any_config(&g, &all, &covariance, k, how, kl);
                double grads[ROWS][4] = {{0}};
                if (weighs && kl == TT_KL_K3_RATIO) { c.beta = 0; }     /* whose ratio is not held */
                batch_loss(&g, &all, rows, ROWS, &c, grads, NULL);
                for (i = 0; i < ROWS; i++) {
                    for (t = 0; t < all.items[i].response_length; t++) {
                        double up = moved_loss(&g, &all, &c, i, t, h, weighs);
                        double here = moved_loss(&g, &all, &c, i, t, 0, weighs);
                        double down = moved_loss(&g, &all, &c, i, t, -h, weighs);
                        if (fabs(up - 2 * here + down) > 2e-4) {      /* a clip begins within h */
                            kinks++;
                            continue;
                        }
                        checked++;
                        if (TT_CHECK_NEAR(grads[i][t], (up - down) / (2 * (double)h), 2e-4)) { continue; }
                        printf("  loss %d, aggregation %d, kl %d, row %d, token %d\n", k, how, kl, i, t);
                    }
                }
            }
        }
    }
    TT_CHECK(checked > 6000 && kinks < 100);
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    golden_close(&g);
}

/* Equal to the response's they change no bit of any loss of single tokens, and a pooled one by rounding. SDPO is left
 * out: they tell it that there is a q. */
TT_TEST(equal_advantages_of_tokens_are_that_of_the_response) {
    static const int rows[ROWS] = {0, 1, 2};
    tt_covariance covariance = TT_INIT;
    golden g;
    int k, i, t;
    golden_open(&g);
    for (k = 0; k < N_LOSSES; k++) {
        tt_rollouts all;
        tt_grpo_config c = TT_INIT;
        double one[ROWS][4] = {{0}}, other[ROWS][4] = {{0}}, first, second;
        TT_REQUIRE(golden_rows(&g, &all, 1, 0));
        use_loss(&c, k, &covariance);
        first = batch_loss(&g, &all, rows, ROWS, &c, one, NULL);
        for (i = 0; i < ROWS; i++) {
            float a[4];
            for (t = 0; t < 4; t++) { a[t] = all.items[i].advantage; }
            if (k != LOSS_SDPO) { TT_CHECK_OK(g.ctx, tt_rollout_advantages(&all, i, a)); }
        }
        second = batch_loss(&g, &all, rows, ROWS, &c, other, NULL);
        TT_CHECK_NEAR(first, second, 1e-7);
        for (i = 0; i < ROWS; i++) {
            for (t = 0; t < 4; t++) { TT_CHECK_NEAR(one[i][t], other[i][t], 1e-7); }
        }
        tt_rollouts_free(&all);
    }
    tt_covariance_free(&covariance);
    golden_close(&g);
}

TT_TEST(the_entropy_bonus_reaches_its_gradient) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    static const int rows[ROWS] = {0, 1, 2};
    float values[9], gradient[9];
    int n = 9, i;
    tt_tensor *logprobs, *entropy, *loss;
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all, 0, 0));
    c = golden_config(&g);
    c.entropy_coef = 0.1f;
    for (i = 0; i < 9; i++) { values[i] = -1; }
    logprobs = tt_constant(g.ctx, 1, &n, values);
    for (i = 0; i < 9; i++) { values[i] = (float)i; }
    entropy = tt_constant(g.ctx, 1, &n, values);
    logprobs->requires_grad = entropy->requires_grad = 1;
    for (i = 0; i < ROWS; i++) { all.items[i].advantage = 0; }
    loss = grpo_loss(g.ctx, logprobs, entropy, &all, rows, ROWS, &c, NULL);
    TT_CHECK_OK(g.ctx, tt_backward(g.ctx, tt_scale(g.ctx, loss, 2)));
    TT_CHECK_NEAR(tt_item(loss), -0.1 * 4, 1e-6);
    TT_CHECK_OK(g.ctx, tt_tensor_get_grad(entropy, gradient));
    for (i = 0; i < 9; i++) { TT_CHECK_NEAR(gradient[i], -2 * 0.1 / 9, 1e-7); }
    TT_CHECK(logprobs->grad == NULL);           /* advantages of 0 send no backward pass that way */
    tt_step_reset(g.ctx);
    TT_CHECK(grpo_loss(g.ctx, tt_constant(g.ctx, 1, &n, values), NULL, &all, rows, ROWS, &c, NULL) == NULL);
    TT_CHECK_CONTAINS(tt_error(g.ctx), "entropy_coef is 0.1 but entropy is NULL");
    tt_step_reset(g.ctx);
    n = 8;
    TT_CHECK(grpo_loss(g.ctx, tt_constant(g.ctx, 1, &n, values), NULL, &all, rows, ROWS, &c, NULL) == NULL);
    TT_CHECK_CONTAINS(tt_error(g.ctx), "number of log-probs is 8, expected 9");
    tt_rollouts_free(&all);
    golden_close(&g);
}

/* ---- rollouts ---- */
TT_TEST(the_sampler_and_the_trainer_agree_to_the_bit) {
    static const int32_t prompts[2][3] = {{1, 2, 3}, {4, 5, 6}}, end = 0;
    tt_context *ctx = tt_create(NULL);
    tt_model_config config = TT_INIT;
    tt_model *model;
    tt_request requests[2];
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_rollouts all = TT_INIT;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m;
    tt_tensor *logprobs, *entropy;
    int indices[8], i;
    memset(requests, 0, sizeof requests);
    memset(&m, 0, sizeof m);
    config.vocab_size = 23;
    config.hidden_size = 16;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 2;
    model = tt_model_create(ctx, &config, 3);
    TT_REQUIRE(model != NULL);
    for (i = 0; i < 2; i++) {
        requests[i].prompt = prompts[i];
        requests[i].prompt_length = 3;
        requests[i].n = 4;
        requests[i].id = (uint64_t)i;
    }
    sampling.temperature = c.temperature = 0.7f;
    sampling.max_new_tokens = 21;
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    TT_CHECK_OK(ctx, tt_generate(model, requests, 2, &sampling, &completions));
    TT_CHECK_OK(ctx, tt_rollouts_create(ctx, requests, 2, &completions, end, &all));
    for (i = 0; i < 8; i++) { indices[i] = i; all.items[i].rewards[0] = (float)(i % 3); }
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, &m));
    logprobs = tt_model_logprobs(model, tt_rollouts_batch(ctx, &all, indices, 8), c.temperature, &entropy);
    TT_CHECK_OK(ctx, tt_backward(ctx, grpo_loss(ctx, logprobs, entropy, &all, indices, 8, &c, &m)));
    TT_CHECK(m.sampling_logp_difference_max == 0);
    TT_CHECK(m.mismatch_deviation_max == 0);
    TT_CHECK(m.n_tokens == (double)completions.n_tokens && m.entropy > 0);
    all.share_prompts = 1;                           /* each prompt once: two of its three tokens are shared */
    TT_CHECK_INT(tt_rollouts_batch(ctx, &all, indices, 8)->n_tokens, (int)m.n_tokens + 8 + 2 * 2);
    TT_CHECK_INT(tt_rollouts_batch(ctx, &all, indices, 8)->n_sequences, 8 + 2);
    TT_CHECK_INT(tt_rollouts_batch(ctx, &all, indices, 1)->n_sequences, 1);
    logprobs = tt_model_logprobs(model, tt_rollouts_batch(ctx, &all, indices, 8), c.temperature, &entropy);
    grpo_loss(ctx, logprobs, entropy, &all, indices, 8, &c, &m);
    TT_CHECK_OK(ctx, tt_eval(ctx));
    TT_CHECK(m.sampling_logp_difference_max == 0);
    all.items[0].sampling_logprobs[0] += 0.25f;      /* and a difference is seen */
    memset(&m, 0, sizeof m);
    grpo_loss(ctx, logprobs, entropy, &all, indices, 8, &c, &m);
    TT_CHECK_NEAR(m.sampling_logp_difference_max, 0.25, 1e-6);
    tt_step_reset(ctx);
    tt_rollouts_free(&all);
    tt_completions_free(&completions);
    tt_model_destroy(model);
    tt_destroy(ctx);
}
/* A response that the sampler liked far better than the student does now leaves the policy loss only where A < 0. */
TT_TEST(stale_responses_leave_the_loss_only_if_they_were_bad) {
    golden g;
    tt_rollouts all;
    tt_grpo_config c;
    double grads[ROWS][4] = {{0}};
    static const int rows[ROWS] = {0, 1, 2};
    int i, t;
    golden_open(&g);
    TT_REQUIRE(golden_rows(&g, &all, 1, 1));
    c = golden_config(&g);
    c.loss = TT_LOSS_REINFORCE;
    c.off_policy_mask_threshold = 0.5f;
    for (i = 0; i < ROWS; i++) {
        all.items[i].advantage = i == 0 ? 1.0f : -1.0f;
        for (t = 0; t < all.items[i].response_length; t++) { all.items[i].sampling_logprobs[t] = (float)value2(tt_json_get(g.in, "logp"), i, t) + (i == 2 ? 0.4f : 0.6f); }
    }
    batch_loss(&g, &all, rows, ROWS, &c, grads, NULL);
    TT_CHECK(grads[0][0] != 0 && grads[1][0] == 0 && grads[2][0] != 0);
    c.beta = 0.1f;                                  /* the divergence stays in */
    batch_loss(&g, &all, rows, ROWS, &c, grads, NULL);
    TT_CHECK(grads[1][0] != 0);
    tt_rollouts_free(&all);
    golden_close(&g);
}
/* ---- cases of the peers' own tests, with the numbers they expect ---- */
/* TRL, tests/test_rewards.py, TestSoftOverlongPunishmentReward: limit 100, cache 20. */
TT_TEST(trl_punishes_length_softly) {
    static const struct { int length; double want; } cases[] = {{50, 0}, {110, -1}, {90, -0.5}};
    tt_grpo_config c = TT_INIT;
    int i;
    c.max_completion_length = 100;
    c.overlong_cache = 20;
    for (i = 0; i < 3; i++) { TT_CHECK_NEAR(tt_grpo_overlong(&c, cases[i].length), cases[i].want, 1e-7); }
}
/* TRL, tests/test_grpo_trainer.py, test_reward_metric_reflects_reward_weights: rewards 1 and 0 of weights 0.7 and 0.3. */
TT_TEST(trl_logs_the_weighted_reward) {
    static const int lengths[3] = {1, 1, 1};
    static const float weights[2] = {0.7f, 0.3f};
    static const tt_advantage_type types[2] = {TT_ADV_GRPO, TT_ADV_GDPO};      /* sum_then_normalize, normalize_then_sum */
    tt_context *ctx = tt_create(NULL);
    int k, i;
    for (k = 0; k < 2; k++) {
        tt_rollouts all;
        tt_grpo_config c = TT_INIT;
        tt_grpo_metrics m = TT_INIT;
        TT_REQUIRE(make_rollouts(ctx, 1, 3, lengths, END, &all) == TT_OK);
        c.advantage = types[k];
        all.n_rewards = 2;
        for (i = 0; i < 3; i++) { all.items[i].rewards[0] = 1; }
        TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, weights, &m));
        TT_CHECK_NEAR(m.reward, 0.7, 1e-6);
        tt_rollouts_free(&all);
    }
    tt_destroy(ctx);
}
/* verl, tests/utils/test_groupwise.py, test_group_mean_std_simple: [1, 3] has mean 2 and std sqrt 2; a group of one mean 0 and std 1. */
TT_TEST(verl_standardises_groups) {
    static const int two[2] = {1, 1}, one[1] = {1};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m = TT_INIT;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, two, END, &all) == TT_OK);
    all.items[0].rewards[0] = 1;
    all.items[1].rewards[0] = 3;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, &m));
    TT_CHECK_NEAR(m.reward, 2, 1e-7);
    TT_CHECK_NEAR(m.reward_std, sqrt(2.0), 1e-6);
    TT_CHECK_NEAR(all.items[1].advantage, 1 / (sqrt(2.0) + 1e-6), 1e-6);
    tt_rollouts_free(&all);
    TT_REQUIRE(make_rollouts(ctx, 1, 1, one, END, &all) == TT_OK);
    all.items[0].rewards[0] = 2;
    c.keep_single = 1;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK_NEAR(all.items[0].advantage, 2, 1e-5);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* d loss / d logp of rollouts whose log-probs and sampler's log-probs are constant along each response. */
static void constant_slopes(tt_context *ctx, tt_rollouts *all, const double *logp, const double *sampled, const tt_grpo_config *c, double *out, tt_grpo_metrics *m) {
    int indices[4], lengths[4], i, t, n = 0, at = 0;
    float values[32], slopes[32];
    tt_tensor *x, *loss;
    for (i = 0; i < all->n; i++) {
        tt_rollout *r = &all->items[i];
        indices[i] = i;
        lengths[i] = r->response_length;
        r->old_logprobs = r->old_logprobs ? r->old_logprobs : (float *)tt_alloc(ctx, (size_t)lengths[i], sizeof(float));
        for (t = 0; t < lengths[i]; t++) {
            values[n++] = r->old_logprobs[t] = (float)logp[i];
            r->sampling_logprobs[t] = (float)sampled[i];
        }
    }
    x = tt_constant(ctx, 1, &n, values);
    x->requires_grad = 1;
    memset(m, 0, sizeof *m);
    loss = grpo_loss(ctx, x, NULL, all, indices, all->n, c, m);
    TT_CHECK_OK(ctx, tt_backward(ctx, loss));
    TT_CHECK_OK(ctx, tt_tensor_get_grad(x, slopes));
    for (i = 0; i < all->n; i++) {
        out[i] = (double)slopes[at];
        at += lengths[i];
    }
    tt_step_reset(ctx);
}
/* TRL, tests/test_grpo_trainer.py, test_get_off_policy_mask and _padding: threshold 1; a bad response whose log-probs fell by 2
 * on average leaves, by 0.5 it stays, a good one stays. There is no padding here that could be averaged in. */
TT_TEST(trl_masks_bad_responses_off_policy) {
    static const int lengths[3] = {4, 4, 4}, two[1] = {2};
    static const double logp[3] = {-2, -0.5, -2}, sampled[3] = {0, 0, 0}, near_enough[1] = {-0.5};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m;
    double slopes[3];
    c.loss = TT_LOSS_REINFORCE;
    c.off_policy_mask_threshold = 1;
    TT_REQUIRE(make_rollouts(ctx, 1, 3, lengths, END, &all) == TT_OK);
    all.items[0].advantage = 1;
    all.items[1].advantage = all.items[2].advantage = -1;
    constant_slopes(ctx, &all, logp, sampled, &c, slopes, &m);
    TT_CHECK(slopes[0] != 0 && slopes[1] != 0 && slopes[2] == 0);
    tt_rollouts_free(&all);
    TT_REQUIRE(make_rollouts(ctx, 1, 1, two, END, &all) == TT_OK);
    all.items[0].advantage = -1;
    constant_slopes(ctx, &all, logp, sampled, &c, slopes, &m);
    TT_CHECK(slopes[0] == 0);
    constant_slopes(ctx, &all, near_enough, sampled, &c, slopes, &m);
    TT_CHECK(slopes[0] != 0);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* verl, tests/trainer/ppo/test_rollout_corr.py, test_mask_mode: trainer -2, sampler -1 and -2.5 give the weights 0.368 and 1.649;
 * with the bounds 0.5 and 2 the first response is rejected, the second stays; test_basic_rollout_correction: never above 2. */
TT_TEST(verl_weighs_and_rejects_by_mismatch) {
    static const int lengths[2] = {5, 5};
    static const double logp[2] = {-2, -2}, sampled[2] = {-1, -2.5}, far[2] = {-1, -4};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m;
    double slopes[2], plain[2];
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    all.items[0].advantage = all.items[1].advantage = 1;
    c.loss = TT_LOSS_REINFORCE;
    constant_slopes(ctx, &all, logp, sampled, &c, plain, &m);
    c.mismatch = TT_MISMATCH_TOKEN_TRUNCATE;
    c.mismatch_high = 2;
    constant_slopes(ctx, &all, logp, sampled, &c, slopes, &m);
    TT_CHECK_NEAR(slopes[0] / plain[0], 0.368, 1e-3);
    TT_CHECK_NEAR(slopes[1] / plain[1], 1.649, 1e-3);
    constant_slopes(ctx, &all, logp, far, &c, slopes, &m);
    TT_CHECK_NEAR(slopes[1] / plain[1], 2, 1e-6);
    c.mismatch = TT_MISMATCH_TOKEN_MASK;
    c.mismatch_low = 0.5f;
    constant_slopes(ctx, &all, logp, sampled, &c, slopes, &m);
    TT_CHECK(slopes[0] == 0);
    TT_CHECK_NEAR(slopes[1] / plain[1], 1.649, 1e-3);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* Loss of rollouts[begin .. end) with these log-probs and, if not NULL, entropies, response by response; slopes and
 * entropy_slopes receive its derivatives unless NULL. */
static double loss_of(tt_context *ctx, const tt_rollouts *all, int begin, int end, const float *logprobs, const float *entropies, const tt_grpo_config *c, float *slopes, float *entropy_slopes) {
    int indices[8], n = 0, i;
    tt_tensor *l, *h = NULL, *loss;
    double out;
    for (i = begin; i < end; i++) {
        indices[i - begin] = i;
        n += all->items[i].response_length;
    }
    l = tt_constant(ctx, 1, &n, logprobs);
    l->requires_grad = 1;
    if (entropies) {
        h = tt_constant(ctx, 1, &n, entropies);
        h->requires_grad = 1;
    }
    loss = grpo_loss(ctx, l, h, all, indices, end - begin, c, NULL);
    TT_CHECK_OK(ctx, tt_backward(ctx, loss));
    out = loss ? tt_item(loss) : (double)NAN;
    if (slopes) { TT_CHECK_OK(ctx, tt_tensor_get_grad(l, slopes)); }
    if (entropy_slopes) { TT_CHECK_OK(ctx, tt_tensor_get_grad(h, entropy_slopes)); }
    tt_step_reset(ctx);
    return out;
}
/* TRL, tests/test_grpo_trainer.py, TestGetHighEntropyMask; its threshold is 1 - top_entropy_quantile. */
TT_TEST(trl_keeps_the_tokens_of_highest_entropy) {
    static const float rising[12] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 1.0f, 1.1f, 1.2f};
    static const float mixed[12] = {0.1f, 0.2f, 0.3f, 1.4f, 0.5f, 0.14f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 1.0f};
    static const struct { const float *entropies; const char *mask, *kept; float quantile; } cases[] = {
        {rising, "111111111100", "000000001100", 0.2f}, {mixed, "111100111100", "000100000100", 0.2f}, {rising, "111111111100", "000001111100", 0.5f},
        {rising, "111111111100", "111111111100", 1}, {rising, "111111111100", "000000000100", 1e-6f}, {rising, "000000000000", "000000000000", 0.5f},
        {rising, "111111111000", "000011111000", 0.5f}                       /* ours: the token at the threshold stays */
    };
    static const int lengths[2] = {6, 6};
    static const float logprobs[12] = {0};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    float slopes[12];
    int k, t;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    all.items[0].advantage = all.items[1].advantage = 1;
    c.loss = TT_LOSS_REINFORCE;
    c.aggregation = TT_TOKEN_SUM;
    for (k = 0; k < (int)(sizeof cases / sizeof *cases); k++) {
        for (t = 0; t < 12; t++) { keep(&all.items[t / 6], t % 6, cases[k].mask[t] == '1'); }
        c.top_entropy_quantile = cases[k].quantile;
        loss_of(ctx, &all, 0, 2, logprobs, cases[k].entropies, &c, slopes, NULL);
        for (t = 0; t < 12; t++) { TT_CHECK(slopes[t] == (cases[k].kept[t] == '1' ? -1.0f : 0.0f)); }
    }
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* Central differences, with divergence and entropy bonus, a guided and an off-policy response: only the divergence reaches a
 * token of small entropy, or in a sequence's loss the ratio that it shares. */
TT_TEST(gradients_keep_to_the_tokens_of_highest_entropy) {
    static const int losses[] = {TT_LOSS_PPO_CLIP, LOSS_SAPO, TT_LOSS_GSPO, TT_LOSS_REINFORCE, TT_LOSS_GMPO, TT_LOSS_RLOO, LOSS_DRO, LOSS_KL_COV};
    tt_covariance covariance = TT_INIT;
    static const int lengths[4] = {4, 3, 2, 3};
    static const float entropies[12] = {0.3f, 1.1f, 0.2f, 0.9f, 0.8f, 0.1f, 0.7f, 1.2f, 0.4f, 0.5f, 1.0f, 0.6f};   /* the median: 0.65 */
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    int k, i, t;
    TT_REQUIRE(make_rollouts(ctx, 1, 4, lengths, END, &all) == TT_OK);
    for (i = 0; i < 4; i++) {
        tt_rollout *r = &all.items[i];
        r->advantage = i % 2 ? -0.7f : 1.3f;
        r->old_logprobs = (float *)tt_alloc(ctx, (size_t)lengths[i], sizeof(float));
        r->ref_logprobs = (float *)tt_alloc(ctx, (size_t)lengths[i], sizeof(float));
        for (t = 0; t < lengths[i]; t++) {
            r->old_logprobs[t] = -1.0f - 0.02f * (float)t;
            r->ref_logprobs[t] = -1.3f + 0.1f * (float)t;
            r->sampling_logprobs[t] = -1.1f;
        }
    }
    set_kind(&all.items[2], TT_KIND_GUIDED);
    set_kind(&all.items[3], TT_KIND_OFF_POLICY);
    for (k = 0; k < (int)(sizeof losses / sizeof *losses); k++) {
        const float h = 1.0f / 512;
        tt_grpo_config c = TT_INIT;
        float logprobs[12], slopes[12], without[12], entropy_slopes[12];
        double all_tokens, kept;
        use_loss(&c, losses[k], &covariance);
        c.mismatch = TT_MISMATCH_TOKEN_TRUNCATE;
        c.aas = TT_AAS_LUFFY;
        c.beta = 0.3f;
        c.entropy_coef = 0.1f;
        c.top_entropy_quantile = 0.5f;
        for (t = 0; t < 12; t++) { logprobs[t] = -1.05f + 0.01f * (float)t; }
        kept = loss_of(ctx, &all, 0, 4, logprobs, entropies, &c, slopes, entropy_slopes);
        for (t = 0; t < 12; t++) {
            float here = logprobs[t];
            double up, down;
            logprobs[t] = here + h;
            up = loss_of(ctx, &all, 0, 4, logprobs, entropies, &c, NULL, NULL);
            logprobs[t] = here - h;
            down = loss_of(ctx, &all, 0, 4, logprobs, entropies, &c, NULL, NULL);
            logprobs[t] = here;
            if (!TT_CHECK_NEAR(slopes[t], (up - down) / (2 * (double)h), 2e-4)) { printf("  loss %d, token %d\n", losses[k], t); }
            TT_CHECK_NEAR(entropy_slopes[t], entropies[t] > 0.65f ? -0.1 / 12 : 0, 1e-8);
        }
        c.top_entropy_quantile = 0;
        all_tokens = loss_of(ctx, &all, 0, 4, logprobs, entropies, &c, without, entropy_slopes);
        TT_CHECK(fabs(all_tokens - kept) > 1e-3);
        for (t = 0; t < 12; t++) { TT_CHECK_NEAR(entropy_slopes[t], -0.1 / 12, 1e-8); }
        TT_CHECK_NEAR(slopes[11], 0.3 / 12 * (1 - exp(all.items[3].ref_logprobs[2] - logprobs[11])), 1e-6);    /* off-policy, entropy 0.6: the divergence alone */
        TT_CHECK(slopes[7] == without[7]);                                                                       /* guided, entropy 1.2: all of it */
    }
    {
        int n = 12, indices[4] = {0, 1, 2, 3};
        tt_grpo_config c = TT_INIT;
        c.top_entropy_quantile = 0.5f;
        TT_CHECK(grpo_loss(ctx, tt_constant(ctx, 1, &n, entropies), NULL, &all, indices, 4, &c, NULL) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "top_entropy_quantile is 0.5 but entropy is NULL");
        tt_step_reset(ctx);
    }
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* verl, tests/trainer/ppo/test_loss_aggregation_on_cpu.py: a loss of A = -1 is the log-prob. What ranks have is added here, not
 * averaged, so nothing is scaled by their number. */
TT_TEST(verl_sums_over_tokens) {
    static const int lengths[8] = {3, 3, 3, 3, 3, 3, 3, 3};
    static const float values[6] = {1, 2, 30, 4, 50, 6};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    float rising[24];
    int i, parts;
    c.loss = TT_LOSS_REINFORCE;
    c.aggregation = TT_TOKEN_SUM;
    TT_REQUIRE(make_rollouts(ctx, 1, 8, lengths, END, &all) == TT_OK);
    for (i = 0; i < 8; i++) {
        all.items[i].advantage = -1;
        keep(&all.items[i], i == 1 ? 1 : 2, 0);
    }
    TT_CHECK_NEAR(loss_of(ctx, &all, 0, 2, values, NULL, &c, NULL, NULL), 1 + 2 + 4 + 6, 0);
    keep(&all.items[1], 1, 1);
    keep(&all.items[1], 2, 0);
    for (i = 0; i < 24; i++) { rising[i] = (float)(i + 1); }
    for (parts = 1; parts <= 8; parts *= 2) {
        double sum = 0;
        for (i = 0; i < parts; i++) { sum += loss_of(ctx, &all, i * 8 / parts, (i + 1) * 8 / parts, rising + i * 24 / parts, NULL, &c, NULL, NULL); }
        TT_CHECK_NEAR(sum, 192, 0);                    /* 1 + 2 + 4 + 5 + ... + 22 + 23 */
    }
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* verl, tests/trainer/ppo/test_dynamic_policy_losses_on_cpu.py, test_dro_matches_direct_formula; its third token is masked. */
TT_TEST(verl_penalises_the_square_of_the_log_ratio) {
    tt_grpo_config c = TT_INIT;
    tt_token_loss first, second;
    c.token_loss = tt_loss_dro;
    first = tt_grpo_token_loss(&c, -0.8, -1.0, (double)NAN, 2, TT_KIND_STUDENT);
    second = tt_grpo_token_loss(&c, -0.9, -0.7, (double)NAN, -1.5, TT_KIND_STUDENT);
    TT_CHECK_NEAR((first.loss + second.loss) / 2, ((1.6 + 0.025 * 0.04) + (-1.35 + 0.025 * 0.04)) / 2, 1e-9);
    TT_CHECK_NEAR(first.dloss, -2 + 0.05 * 0.2, 1e-9);
    TT_CHECK_NEAR(second.dloss, 1.5 - 0.05 * 0.2, 1e-9);
}
/* Twelve tokens of four responses; log-probs now and at the rollout are exact in a float. */
static const int cov_lengths[4] = {4, 3, 2, 3};
static const float cov_now[12] = {-0.25f, -2.5f, -1, -0.125f, -3, -0.5f, -1.75f, -0.375f, -2.25f, -0.75f, -1.5f, -4};
static int cov_rows(tt_context *ctx, tt_rollouts *all) {
    static const float old[12] = {-0.5f, -2, -0.875f, -0.125f, -2.25f, -0.625f, -1.5f, -0.25f, -2.875f, -0.875f, -1.25f, -5.5f};
    static const float advantages[4] = {1.5f, -0.75f, 0.5f, -1.25f};
    int i, at = 0;
    if (!TT_CHECK_OK(ctx, make_rollouts(ctx, 1, 4, cov_lengths, END, all))) { return 0; }
    for (i = 0; i < 4; i++) {
        all->items[i].advantage = advantages[i];
        all->items[i].old_logprobs = (float *)tt_alloc(ctx, (size_t)cov_lengths[i], sizeof(float));
        if (!TT_CHECK(all->items[i].old_logprobs != NULL)) { return 0; }
        memcpy(all->items[i].old_logprobs, old + at, (size_t)cov_lengths[i] * sizeof *old);
        at += cov_lengths[i];
    }
    return 1;
}
/* The loss of responses [begin, end) and its slopes. */
static void check_cov(tt_context *ctx, const tt_rollouts *all, int begin, int end, const tt_grpo_config *c, double want, const double *slopes) {
    float got[12];
    int first = 0, n = 0, i;
    for (i = 0; i < end; i++) { (i < begin ? &first : &n)[0] += cov_lengths[i]; }
    TT_CHECK_NEAR(loss_of(ctx, all, begin, end, cov_now + first, NULL, c, got, NULL), want, 1e-7);
    for (i = 0; i < n; i++) { if (!TT_CHECK_NEAR(got[i], slopes[i], 3e-8)) { printf("  loss %d, token %d\n", c->loss, i); } }
}
/* What the loss of all twelve tokens measures. */
static tt_grpo_metrics cov_metrics(tt_context *ctx, const tt_rollouts *all, const float *now, const tt_grpo_config *c) {
    static const int indices[4] = {0, 1, 2, 3};
    tt_grpo_metrics m = TT_INIT;
    int n = 12;
    TT_CHECK(grpo_loss(ctx, tt_constant(ctx, 1, &n, now), NULL, all, indices, 4, c, &m) != NULL);
    tt_step_reset(ctx);
    return m;
}
static tt_grpo_config cov_config(int loss, tt_covariance *covariance) {
    tt_grpo_config c = TT_INIT;
    use_loss(&c, loss, covariance);
    covariance->ratio = covariance->kl ? 0.25f : 0.5f;
    covariance->low = 0.3f;
    covariance->high = 2;
    return c;
}
/* Tokens that the loss of all twelve chooses. */
static double cov_chosen(tt_context *ctx, const tt_rollouts *all, const float *now, const tt_grpo_config *c) {
    tt_covariance *covariance = (tt_covariance *)c->token_loss_user;
    covariance->n_chosen = 0;
    cov_metrics(ctx, all, now, c);
    return covariance->n_chosen;
}
/* verl's clip_cov, kl_cov, gpg and geo_mean of these tokens, in double with torch's autograd. The covariances are 1.77 -1.42 0.71
 * 1.95 | 1.25 -0.83 0.21 | 0.47 -0.31 | -1 0 3.33. CLIP_COV: tokens 2, 3 and 7 are in the band and go, 0 and 4 are as well but PPO
 * clips them; no dual clip. KL_COV: tokens 11, 3 and 0 pay, 3 nothing, as l = o. */
TT_TEST(verl_drops_or_penalises_tokens_of_large_covariance) {
    static const double clip[12] = {0, -0.0758163325, 0, 0, 0, 0.0708217783, 0, 0, 0, 0.118036297, 0, 0.466842611};
    static const double penalty[12] = {-0.152169844, -0.0758163325, -0.110312113, -0.125, 0.0295229095, 0.0708217783, 0.0486750489, -0.0367707043, -0.0778435816, 0.118036297, 0.0811250816, 0.475175945};
    static const double one_pays[12] = {-0.160503177, -0.0758163325, -0.110312113, -0.125, 0.0295229095, 0.0708217783, 0.0486750489, -0.0367707043, -0.0778435816, 0.118036297, 0.0811250816, 0.475175945};
    static const double plain[12] = {-0.125, -0.125, -0.125, -0.125, 0.0625, 0.0625, 0.0625, -0.0416666667, -0.0416666667, 0.104166667, 0.104166667, 0.104166667};
    static const double geometric[12] = {-0.085360346, -0.085360346, -0.085360346, -0.085360346, 0, 0.0524660635, 0.0524660635, -0.0717126059, 0, 0.164732922, 0.164732922, 0.164732922};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_covariance covariance = TT_INIT;
    tt_grpo_config c = cov_config(LOSS_CLIP_COV, &covariance);
    TT_REQUIRE(cov_rows(ctx, &all));
    check_cov(ctx, &all, 0, 4, &c, 0.563217688, clip);
    c = cov_config(LOSS_KL_COV, &covariance);
    check_cov(ctx, &all, 0, 4, &c, 0.243361152, penalty);
    covariance.ratio = 0;                                   /* 2e-4 of 12 tokens: one */
    check_cov(ctx, &all, 0, 4, &c, 0.241277819, one_pays);
    TT_CHECK_NEAR(cov_chosen(ctx, &all, cov_now, &c), 1, 0);
    tt_covariance_free(&covariance);
    use_loss(&c, TT_LOSS_REINFORCE, &covariance);
    check_cov(ctx, &all, 0, 4, &c, -0.385416667, plain);
    c.loss = TT_LOSS_GMPO;
    c.aggregation = TT_SEQ_MEAN_TOKEN_MEAN;
    check_cov(ctx, &all, 0, 4, &c, 0.166730360, geometric);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* One token alone has an advantage, of the sign of its log-prob less the mean: it is the one that is chosen. */
TT_TEST(a_tokens_own_advantage_counts_in_its_covariance) {
    static const float none[4] = {0}, own[4] = {0, -100, 0, 0};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_covariance covariance = TT_INIT;
    tt_grpo_config c = cov_config(LOSS_KL_COV, &covariance);
    int i;
    TT_REQUIRE(cov_rows(ctx, &all));
    covariance.ratio = 0;
    TT_CHECK_NEAR(cov_chosen(ctx, &all, cov_now, &c), 1, 0);
    TT_CHECK(covariance.chosen[11] && !covariance.chosen[1]);
    for (i = 0; i < 4; i++) { TT_CHECK_OK(ctx, tt_rollout_advantages(&all, i, i == 0 ? own : none)); }
    TT_CHECK_NEAR(cov_chosen(ctx, &all, cov_now, &c), 1, 0);
    TT_CHECK(covariance.chosen[1] && !covariance.chosen[11]);
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}

TT_TEST(without_indices_all_rollouts_are_meant) {
    static const int indices[4] = {0, 1, 2, 3}, shape = 12;
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_covariance covariance = TT_INIT;
    int loss;
    TT_REQUIRE(cov_rows(ctx, &all));
    for (loss = TT_LOSS_PPO_CLIP; loss <= LOSS_KL_COV; loss++) {
        tt_grpo_config c = cov_config(loss, &covariance);
        tt_batch *named = tt_rollouts_batch(ctx, &all, indices, 4), *meant = tt_rollouts_batch(ctx, &all, NULL, 0);
        float entropies[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
        tt_tensor *now = tt_constant(ctx, 1, &shape, cov_now), *entropy = tt_constant(ctx, 1, &shape, entropies);
        c.top_entropy_quantile = 0.5f;
        TT_REQUIRE(named && meant);
        TT_CHECK(meant->n_tokens == named->n_tokens && meant->n_targets == named->n_targets && meant->n_sequences == 4);
        TT_CHECK_BYTES(meant->tokens, named->tokens, (size_t)named->n_tokens * sizeof *named->tokens);
        TT_CHECK_NEAR(tt_item(grpo_loss(ctx, now, entropy, &all, NULL, 0, &c, NULL)), tt_item(grpo_loss(ctx, now, entropy, &all, indices, 4, &c, NULL)), 0);
        TT_CHECK_OK(ctx, tt_eval(ctx));
        tt_step_reset(ctx);
    }
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* The same with responses {0, 1} and {2, 3} as micro-batches of verl: each has its own means and choice, but the whole batch's denominator. */
TT_TEST(covariances_are_those_of_the_micro_batch) {
    static const double clip[2][7] = {{0, -0.0758163325, -0.110312113, 0, 0, 0.0708217783, 0}, {0, 0, 0.118036297, 0, 0}};
    static const double penalty[2][7] = {{-0.160503177, -0.0758163325, -0.110312113, -0.125, 0.0211895762, 0.0708217783, 0.0486750489},
                                         {-0.0367707043, -0.0778435816, 0.118036297, 0.0811250816, 0.475175945}};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_covariance covariance = TT_INIT;
    tt_grpo_config c = cov_config(LOSS_CLIP_COV, &covariance);
    TT_REQUIRE(cov_rows(ctx, &all));
    check_cov(ctx, &all, 0, 2, &c, -0.165306667, clip[0]);
    check_cov(ctx, &all, 2, 4, &c, 0.151369631, clip[1]);
    c = cov_config(LOSS_KL_COV, &covariance);
    check_cov(ctx, &all, 0, 2, &c, -0.316361886, penalty[0]);
    check_cov(ctx, &all, 2, 4, &c, 0.563889704, penalty[1]);
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* verl's dppo_tv and dppo_kl of the same tokens. |p - p_old| is above its bound for tokens 0 (0.17 > 0.1), 4 and 10 (0.056, 0.063 >
 * 0.05), KL(old, now) for 0 and 8 (0.075, 0.015 > 0.01) and 4 (0.025 > 0.02; KL(now, old) would be 0.0199). The ratio of token
 * 11, 4.5, is cut to 2, though A < 0. */
TT_TEST(verl_bounds_the_move_of_a_probability) {
    static const double tv[12] = {0, -0.0758163325, -0.110312113, -0.125, 0, 0.0708217783, 0.0486750489, -0.0367707043, -0.0778435816, 0.118036297, 0, 0.208333333};
    static const double kl[12] = {0, -0.0758163325, -0.110312113, -0.125, 0, 0.0708217783, 0.0486750489, -0.0367707043, 0, 0.118036297, 0.0811250816, 0.208333333};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_dppo dppo = TT_INIT;
    tt_grpo_config c = TT_INIT;
    tt_grpo_metrics m;
    TT_REQUIRE(cov_rows(ctx, &all));
    c.token_loss = tt_loss_dppo;
    c.token_loss_user = &dppo;
    dppo.epsilon_low = 0.05f;
    dppo.epsilon_high = 0.1f;
    dppo.ratio_max = 2;
    check_cov(ctx, &all, 0, 4, &c, -0.538037764, tv);
    dppo.kl = 1;
    dppo.epsilon_low = 0.02f;
    dppo.epsilon_high = 0.01f;
    check_cov(ctx, &all, 0, 4, &c, -0.834873445, kl);
    m = cov_metrics(ctx, &all, cov_now, &c);
    TT_CHECK_NEAR(m.clip_low, 1.0 / 12, 1e-12);
    TT_CHECK_NEAR(m.clip_high, 2.0 / 12, 1e-12);
    TT_CHECK_NEAR(m.clip_dual, 1.0 / 12, 1e-12);
    tt_rollouts_free(&all);
    {   /* defaults: bounds 0.15 and 0.05; ratios up to 20. All others may have no mass, now or at the rollout: 1e-8 */
        tt_grpo_config d = TT_INIT;
        tt_dppo settings = TT_INIT;
        d.token_loss = tt_loss_dppo;
        TT_CHECK(tt_grpo_token_loss(&d, log(0.54), log(0.4), (double)NAN, 1, TT_KIND_STUDENT).dloss < -1.34 && tt_grpo_token_loss(&d, log(0.56), log(0.4), (double)NAN, 1, TT_KIND_STUDENT).dloss == 0);
        TT_CHECK_NEAR(tt_grpo_token_loss(&d, log(0.1), log(0.001), (double)NAN, -1, TT_KIND_STUDENT).dloss, 20, 1e-6);
        d.token_loss_user = &settings;
        settings.ratio_max = -1;
        TT_CHECK_NEAR(tt_grpo_token_loss(&d, log(0.1), log(0.001), (double)NAN, -1, TT_KIND_STUDENT).dloss, 100, 1e-9);
        settings.kl = 1;
        TT_CHECK(tt_grpo_token_loss(&d, log(0.55), log(0.4), (double)NAN, 1, TT_KIND_STUDENT).dloss < -1.37 && tt_grpo_token_loss(&d, log(0.57), log(0.4), (double)NAN, 1, TT_KIND_STUDENT).dloss == 0);
        TT_CHECK(tt_grpo_token_loss(&d, 0, log(0.4), (double)NAN, 1, TT_KIND_STUDENT).dloss == 0 && tt_grpo_token_loss(&d, -0.1, 0, (double)NAN, -1, TT_KIND_STUDENT).dloss == 0);
    }
    tt_destroy(ctx);
}
/* Which of the ten tokens that CLIP_COV drops: with A = 1 and -1 and l = o they have a slope otherwise. */
static unsigned dropped(tt_context *ctx, const tt_rollouts *all, const int *indices, const float *values, const tt_grpo_config *c) {
    float ordered[10], slopes[10];
    unsigned bits = 0;
    int n = 10, i, t;
    tt_tensor *x;
    for (i = 0; i < 2; i++) { memcpy(ordered + i * 5, values + indices[i] * 5, 5 * sizeof *values); }
    x = tt_constant(ctx, 1, &n, ordered);
    x->requires_grad = 1;
    TT_CHECK_OK(ctx, tt_backward(ctx, grpo_loss(ctx, x, NULL, all, indices, 2, c, NULL)));
    TT_CHECK_OK(ctx, tt_tensor_get_grad(x, slopes));
    for (i = 0; i < 2; i++) { for (t = 0; t < 5; t++) { bits |= (unsigned)(slopes[i * 5 + t] == 0) << (indices[i] * 5 + t); } }
    tt_step_reset(ctx);
    return bits;
}
static int bits_of(unsigned x) { int n = 0; while (x) { n += (int)(x & 1); x >>= 1; } return n; }
/* Eight of ten tokens are in the band. Each seed drops three of them, each of the 56 sets as often as any other, whatever the
 * order of the batch. */
TT_TEST(clip_cov_draws_by_its_seed) {
    static const int lengths[2] = {5, 5}, here[2] = {0, 1}, there[2] = {1, 0};
    static const float values[10] = {-1, -1.25f, -1.5f, -1.125f, -9, -4, -4.5f, -5, -4.25f, 3};       /* mean -2.8625; covariances < 0 for 4 and 9 */
    enum { DRAWS = 5600 };
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_covariance covariance = TT_INIT;
    int seen[1024] = {0}, moved = 0, i, k, sets = 0;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    all.items[0].advantage = 1;
    all.items[1].advantage = -1;
    use_loss(&c, LOSS_CLIP_COV, &covariance);
    covariance.ratio = 0.3f;
    for (k = 0; k < DRAWS; k++) {
        unsigned bits;
        covariance.seed = (uint64_t)k;
        bits = dropped(ctx, &all, here, values, &c);
        TT_CHECK_INT(bits_of(bits), 3);
        TT_CHECK_INT(bits & (1u << 4 | 1u << 9), 0);
        seen[bits]++;
        if (k >= 20) { continue; }
        TT_CHECK_INT(bits, dropped(ctx, &all, there, values, &c));
        all.items[0].prompt_id = 7;
        moved += bits != dropped(ctx, &all, here, values, &c);
        all.items[0].prompt_id = 0;
    }
    for (i = 0; i < 1024; i++) {
        sets += seen[i] > 0;
        if (seen[i] > 0 && !TT_CHECK(seen[i] > 50 && seen[i] < 150)) { printf("  set %d: %d times\n", i, seen[i]); }     /* 100 +- 10 */
    }
    TT_CHECK_INT(sets, 56);
    TT_CHECK(moved > 10);
    covariance.ratio = 0.7f;                                /* in floats 6.99999988 of 10 */
    TT_CHECK_INT(bits_of(dropped(ctx, &all, here, values, &c)), 7);
    covariance.ratio = 0.99f;                               /* nine, but eight are in the band */
    TT_CHECK_INT(bits_of(dropped(ctx, &all, here, values, &c)), 8);
    covariance.ratio = 0;
    TT_CHECK_INT(bits_of(dropped(ctx, &all, here, values, &c)), 1);
    covariance.low = 4;     
    covariance.high = 5;                                /* an empty band */
    TT_CHECK_INT(bits_of(dropped(ctx, &all, here, values, &c)), 0);
    set_kind(&all.items[0], TT_KIND_ENVIRONMENT);
    set_kind(&all.items[1], TT_KIND_ENVIRONMENT);
    TT_CHECK_INT(bits_of(dropped(ctx, &all, here, values, &c)), 10);     /* no token in the loss */
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* Tokens with the teacher's loss take no part; nor do those out of the loss. Equal covariances: the first is chosen. */
TT_TEST(covariances_are_those_of_the_students_tokens) {
    static const int losses[2] = {LOSS_CLIP_COV, LOSS_KL_COV};
    tt_covariance covariance = TT_INIT;
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    int k, how, i;
    TT_REQUIRE(cov_rows(ctx, &all));
    for (k = 0; k < 2; k++) {
        for (how = 0; how < 2; how++) {
            tt_grpo_config c = cov_config(losses[k], &covariance);
            float without[12], with[12];
            set_kind(&all.items[3], how ? TT_KIND_ENVIRONMENT : TT_KIND_GUIDED);
            loss_of(ctx, &all, 0, 3, cov_now, NULL, &c, without, NULL);
            loss_of(ctx, &all, 0, 4, cov_now, NULL, &c, with, NULL);
            for (i = 0; i < 9; i++) { TT_CHECK(with[i] == without[i]); }
            TT_CHECK_NEAR(cov_chosen(ctx, &all, cov_now, &c), k ? 2 : 1, 0);
            set_kind(&all.items[3], TT_KIND_STUDENT);
        }
    }
    {
        tt_grpo_config c = cov_config(LOSS_KL_COV, &covariance);
        float slopes[4], now[12];
        covariance.ratio = 0;
        c.aggregation = TT_TOKEN_SUM;
        loss_of(ctx, &all, 0, 1, cov_now, NULL, &c, slopes, NULL);      /* one advantage, no covariance */
        TT_CHECK_NEAR(slopes[0], -1.5 * exp(0.25) + 0.1, 1e-6);
        TT_CHECK_NEAR(slopes[1], -1.5 * exp(-0.5), 1e-6);
        covariance.ratio = 1;
        TT_CHECK_NEAR(cov_chosen(ctx, &all, cov_now, &c), 12, 0);
        memcpy(now, cov_now, sizeof now);
        now[5] = -HUGE_VALF;                                               /* covariance inf - inf: not chosen */
        TT_CHECK_NEAR(cov_chosen(ctx, &all, now, &c), 11, 0);
    }
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* TRL, tests/test_grpo_trainer.py, test_get_sapo_token_loss: ratio 1 and temperature 1 give 4 sigmoid(0) = 2. */
TT_TEST(trl_gates_softly) {
    tt_grpo_config c = TT_INIT;
    c.token_loss = tt_loss_sapo;
    TT_CHECK_NEAR(tt_grpo_token_loss(&c, -0.5, -0.5, (double)NAN, 1, TT_KIND_STUDENT).loss, -2, 1e-12);
}
/* verl, tests/trainer/ppo/test_reinforce_pp_multiturn_on_cpu.py, gamma 1: what the student did not write stands in no
 * advantage's way. */
TT_TEST(verl_skips_what_the_student_did_not_write) {
    static const int compact[2] = {4, 4}, expanded[2] = {6, 4};
    tt_context *ctx = tt_create(NULL);
    float advantages[2][2];
    int k, i;
    for (k = 0; k < 2; k++) {
        tt_rollouts all;
        tt_grpo_config c = TT_INIT;
        c.advantage = TT_ADV_REINFORCE_PP;
        TT_REQUIRE(make_rollouts(ctx, 1, 2, k ? expanded : compact, END, &all) == TT_OK);
        if (k) { keep(&all.items[0], 2, 0); keep(&all.items[0], 3, 0); }
        all.items[0].rewards[0] = 1;
        TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
        for (i = 0; i < 2; i++) { advantages[k][i] = all.items[i].advantage; }
        tt_rollouts_free(&all);
    }
    TT_CHECK(advantages[0][0] > 0 && memcmp(advantages[0], advantages[1], sizeof advantages[0]) == 0);
    tt_destroy(ctx);
}

/* Rewards 2e-4 apart: verl's 1e-8 stands beside the variance in the root, OpenRLHF's is its least value. */
TT_TEST(whitening_guards_a_small_variance) {
    static const int lengths[2] = {1, 1};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    c.advantage = TT_ADV_REINFORCE_PP;
    all.items[1].rewards[0] = 2e-4f;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK_NEAR(all.items[1].advantage, 1e-4 / sqrt(2e-8 + 1e-8), 1e-5);
    c.biased_std = 1;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK_NEAR(all.items[1].advantage, 1, 1e-5);
    all.items[1].rewards[0] = 2e-5f;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK_NEAR(all.items[1].advantage, 0.1, 1e-5);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
/* Every correction of the mismatch has weight 1 to the bit, if nothing truncates the distribution: sampler and trainer are
 * the same arithmetic. Under top-p the sampler's log-probs are still those of the whole softmax, but its tokens are not
 * drawn from it; log-probs of the truncated distribution, as other engines report them, give weights below 1. */
TT_TEST(mismatch_weights_are_one_unless_the_sampler_differs) {
    static const int32_t prompt[3] = {1, 2, 3}, end = 0;
    tt_context *ctx = tt_create(NULL);
    tt_model_config config = TT_INIT;
    tt_model *model;
    tt_request request = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_rollouts all = TT_INIT;
    tt_grpo_metrics m;
    tt_tensor *logprobs;
    double plain = 0;
    int indices[4] = {0, 1, 2, 3}, how, i, t;
    config.vocab_size = 23;
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    model = tt_model_create(ctx, &config, 3);
    request.prompt = prompt;
    request.prompt_length = 3;
    request.n = 4;
    sampling.max_new_tokens = 12;
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    TT_CHECK_OK(ctx, tt_generate(model, &request, 1, &sampling, &completions));
    TT_CHECK_OK(ctx, tt_rollouts_create(ctx, &request, 1, &completions, end, &all));
    for (i = 0; i < 4; i++) { all.items[i].advantage = i % 2 ? -1.0f : 0.5f; }
    for (how = TT_MISMATCH_OFF; how <= 2 * TT_MISMATCH_GEOMETRIC_MASK; how++) {
        tt_grpo_config c = TT_INIT;
        int off = how > TT_MISMATCH_GEOMETRIC_MASK;
        c.mismatch = (tt_mismatch)(off ? how - TT_MISMATCH_GEOMETRIC_MASK : how);
        c.mismatch_low = 0.3f;
        c.loss = TT_LOSS_REINFORCE;
        memset(&m, 0, sizeof m);
        if (how == TT_MISMATCH_GEOMETRIC_MASK + 1) {      /* another engine: the nucleus holds 0.8 of the mass */
            for (i = 0; i < 4; i++) { for (t = 0; t < all.items[i].response_length; t++) { all.items[i].sampling_logprobs[t] -= logf(0.8f); } }
        }
        logprobs = tt_model_logprobs(model, tt_rollouts_batch(ctx, &all, indices, 4), 1, NULL);
        TT_CHECK(grpo_loss(ctx, logprobs, NULL, &all, indices, 4, &c, &m) != NULL);
        if (how == TT_MISMATCH_OFF) { plain = m.loss; }
        if (!off) {
            TT_CHECK(m.mismatch_deviation_max == 0);
            TT_CHECK_NEAR(m.mismatch_mean, 1, 1e-12);
            TT_CHECK(m.loss == plain);
        } else {
            TT_CHECK(m.mismatch_deviation_max > 0.19 && m.mismatch_mean < 0.81);
            TT_CHECK(m.loss != plain);
        }
        tt_step_reset(ctx);
    }
    tt_rollouts_free(&all);
    tt_completions_free(&completions);
    tt_model_destroy(model);
    tt_destroy(ctx);
}
TT_TEST(an_off_policy_response_takes_a_samples_place) {
    static const int lengths[3] = {4, 2, 2};
    static const int32_t given[3] = {5, 6, 9};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_rollout *r;
    tt_grpo_config c = TT_INIT;
    int t;
    TT_REQUIRE(make_rollouts(ctx, 1, 3, lengths, END, &all) == TT_OK);
    TT_CHECK_OK(ctx, tt_rollout_off_policy(&all, 0, given, 3, 9));
    r = &all.items[0];
    TT_CHECK(r->off_policy && !r->guided && r->stopped && r->response_length == 3);
    for (t = 0; t < 3; t++) { TT_CHECK(*kind_at(r, t) == TT_KIND_OFF_POLICY && isnan(r->sampling_logprobs[t])); }
    all.items[0].rewards[0] = 1;      /* mean and std are those of the others, 0 and 1 */
    c.advantage = TT_ADV_LUFFY;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK_NEAR(r->advantage, 1, 2e-6);
    TT_CHECK(all.items[1].advantage == 0 && all.items[2].advantage == 0);
    c.scale_rewards = TT_SCALE_NONE;
    TT_CHECK_OK(ctx, tt_grpo_advantages(&all, &c, NULL, NULL));
    TT_CHECK(r->advantage == 1);
    TT_CHECK_OK(ctx, tt_rollout_replace(&all, 0, given, 3, 0, 9));      /* a teacher's text is guided again */
    TT_CHECK(r->guided && !r->off_policy);
    TT_CHECK_INT(tt_rollout_off_policy(&all, 3, given, 3, 9), TT_ERR_ARG);
    TT_CHECK_INT(tt_rollout_off_policy(&all, 0, given, 0, 9), TT_ERR_ARG);
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
TT_TEST(a_replaced_response_is_marked_as_the_teachers) {
    static const int lengths[2] = {4, 2};
    static const int32_t longer[6] = {3, 3, 3, 5, 5, 9};
    tt_context *ctx = tt_create(NULL);
    tt_rollouts all;
    tt_rollout *r;
    int t;
    TT_REQUIRE(make_rollouts(ctx, 1, 2, lengths, END, &all) == TT_OK);
    r = &all.items[0];
    r->reward = 0.5f;
    TT_CHECK_OK(ctx, tt_rollout_replace(&all, 0, longer, 6, 3, 9));
    TT_CHECK_INT(r->response_length, 6);
    TT_CHECK_INT(r->attempt_length, 3);
    TT_CHECK(r->guided && r->stopped && r->attempt_reward == 0.5f);
    for (t = 0; t < 6; t++) {
        TT_CHECK_INT(*kind_at(r, t), t >= 3 ? TT_KIND_TEACHER : TT_KIND_STUDENT);
        TT_CHECK_INT(isnan(r->sampling_logprobs[t]) != 0, t >= 3);
    }
    TT_CHECK_INT(tt_rollout_replace(&all, 1, longer, 6, 3, 9), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "attempt_length is 3, expected 0..2");
    TT_CHECK_INT(tt_rollout_replace(&all, 2, longer, 6, 1, 9), TT_ERR_ARG);
    TT_CHECK_OK(ctx, tt_rollout_replace(&all, 1, longer + 4, 2, 0, 9));
    TT_CHECK_OK(ctx, tt_rollout_replace(&all, 1, longer, 3, 0, 9));
    TT_CHECK_INT(all.items[1].stopped, 0);      /* no end token */
    tt_rollouts_free(&all);
    tt_destroy(ctx);
}
static tt_status everything(tt_context *ctx) {
    static const int lengths[4] = {4, 2, 3, 1}, indices[4] = {0, 1, 2, 3};
    enum { LONG = 110000 };    /* tokens: what is known of each asks for a chunk of the step's memory of its own */
    static const float zeros[LONG + 6] = {0};
    static const int32_t fresh[2] = {3, 9}, drawn_out[LONG] = {3};
    static int32_t at[5] = {0, 2, 2, 2, 2}, ids[2] = {3, 4};
    tt_rollouts all;
    tt_grpo_config c = TT_INIT;
    tt_status status = make_rollouts(ctx, 2, 2, lengths, END, &all);
    int n = LONG + 6;
    tt_covariance covariance = TT_INIT;
    tt_kept kept = TT_INIT;
    use_loss(&c, LOSS_KL_COV, &covariance);
    if (status != TT_OK) { return status; }
    kept.at = at;
    kept.ids = ids;
    all.items[0].rewards[0] = 1;
    status = tti_kept_copy(ctx, &kept, 4, 4, &all.items[0].kept);
    if (status == TT_OK) { status = tt_rollouts_question(&all, 0, "2 + 2 ?"); }
    if (status == TT_OK) { status = tt_rollout_replace(&all, 0, fresh, 2, 1, 9); }
    if (status == TT_OK) { status = tt_rollout_replace(&all, 1, drawn_out, LONG, 1, 9); }
    if (status == TT_OK) { status = tt_grpo_advantages(&all, &c, NULL, NULL); }
    if (status == TT_OK) {
        tt_tensor *logprobs;
        logprobs = tt_constant(ctx, 1, &n, zeros);
        if (logprobs) { logprobs->requires_grad = 1; }
        status = tt_rollouts_batch(ctx, &all, indices, 4) ? TT_OK : tt_eval(ctx);
        if (status == TT_OK) { status = tt_backward(ctx, grpo_loss(ctx, logprobs, NULL, &all, indices, 4, &c, NULL)); }
    }
    tt_covariance_free(&covariance);
    tt_rollouts_free(&all);
    return status;
}
TT_TEST(every_failed_allocation_is_reported_and_leaks_nothing) {
    long n;
    int failed = 1;
    for (n = 1; failed && n < 1000; n++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_status status;
        desc.allocator = tt_test_allocator(&memory);
        desc.n_threads = 1;
        ctx = tt_create(&desc);
        TT_REQUIRE(ctx != NULL);
        memory.fail_at = memory.calls + n;
        status = everything(ctx);
        failed = memory.calls >= memory.fail_at;
        TT_CHECK_INT(status, failed ? TT_ERR_MEM : TT_OK);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(n > 20 && n < 1000);
}

TT_MAIN(advantages_have_the_golden_values, equal_rewards_and_groups_of_one_give_exactly_zero,
        rewards_are_weighted_and_may_abstain, an_unscored_response_leaves_the_statistics, length_and_divergence_cost_reward,
        choices_are_known_by_name, settings_out_of_range_are_named, token_losses_have_the_golden_values, kl_estimators_have_the_golden_values,
        aggregations_have_the_golden_values, truncated_responses_leave_loss_and_denominators, shaping_has_the_golden_values,
        gamma_is_the_texts_or_the_released_codes, guided_rows_have_the_golden_values, the_pole_of_the_released_factor_is_finite,
        slopes_are_those_of_the_losses, gradients_are_those_of_the_batch_loss,
        equal_advantages_of_tokens_are_that_of_the_response, the_entropy_bonus_reaches_its_gradient,
        the_sampler_and_the_trainer_agree_to_the_bit, mismatch_weights_are_one_unless_the_sampler_differs,
        stale_responses_leave_the_loss_only_if_they_were_bad, trl_punishes_length_softly, trl_logs_the_weighted_reward, verl_standardises_groups,
        trl_masks_bad_responses_off_policy, verl_weighs_and_rejects_by_mismatch, trl_keeps_the_tokens_of_highest_entropy,
        gradients_keep_to_the_tokens_of_highest_entropy, verl_sums_over_tokens, verl_penalises_the_square_of_the_log_ratio, trl_gates_softly,
        verl_drops_or_penalises_tokens_of_large_covariance, without_indices_all_rollouts_are_meant, a_tokens_own_advantage_counts_in_its_covariance, covariances_are_those_of_the_micro_batch, verl_bounds_the_move_of_a_probability,
        clip_cov_draws_by_its_seed, covariances_are_those_of_the_students_tokens,
        verl_skips_what_the_student_did_not_write, whitening_guards_a_small_variance,
        an_off_policy_response_takes_a_samples_place, a_replaced_response_is_marked_as_the_teachers,
        every_failed_allocation_is_reported_and_leaks_nothing)
