/* Every formula of reasoning RL against the values of a file, through the public API alone: TT_GOLDEN names the file, default
 * tests/golden/rl.json. Other inputs can be tried with a file of the same form. The last test changes each number of the
 * file in turn by a thousandth and wants that to be seen. */
#include "../thinktuning.h"
#include "../examples/losses.h"
#include "../examples/evaluate.h"
#include "tt_test.h"
#include "rollouts.h"

enum { END = 9 };

/* The file, and its small batch: rows of token log-probs; length counts the tokens before the padding. */
typedef struct golden {
    tt_context *ctx;
    tt_test_memory memory;
    tt_text text;
    tt_json *root;
    const tt_json *in;
    int failures, loud;
    int rows, width, n_tokens, lengths[MAX_ROWS], l_max;
    float logp[MAX_ROWS][MAX_LENGTH], old[MAX_ROWS][MAX_LENGTH], ref[MAX_ROWS][MAX_LENGTH], sampler[MAX_ROWS][MAX_LENGTH], adv[MAX_ROWS];
    float epsilon_low, epsilon_high, dual_c, delta, beta;
} golden;

static int note(golden *g, int good, const char *where, int index) {
    if (!good) { g->failures++; }
    if (!good && g->loud) { printf("  %s, entry %d\n", where, index); }
    return good;
}
/* Floats carry seven digits. */
static int near(golden *g, double got, double want, const char *where, int index) {
    int good = fabs(got - want) <= 3e-6 * (fabs(want) > 1 ? fabs(want) : 1);
    if (!good && g->loud) { printf("  got %.9g, the file says %.9g\n", got, want); }
    return note(g, good, where, index);
}
static int near_node(golden *g, double got, const tt_json *want, const char *where, int index) {
    if (!note(g, want != NULL && want->type == TT_JSON_NUMBER, where, index)) { return 0; }
    return near(g, got, want->number, where, index);
}
static const tt_json *section(const golden *g, const char *name, const char *part) {
    const tt_json *at = tt_json_get(g->root, name);
    return part ? tt_json_get(at, part) : at;
}

/* ---- inputs ---- */
static void read_row(golden *g, const char *name, float (*out)[MAX_LENGTH]) {
    const tt_json *from = tt_json_get(g->in, name);
    int i, t;
    for (i = 0; i < g->rows; i++) {
        for (t = 0; t < g->width; t++) {
            out[i][t] = (float)value2(from, i, t);
            note(g, isfinite(out[i][t]) && (t < g->lengths[i] || out[i][t] == 0), name, i);
        }
    }
}
static void read_inputs(golden *g) {
    const tt_json *mask = tt_json_get(g->in, "mask");
    double l_max = tt_json_number(g->in, "Lmax", 0);
    int i, t;
    g->rows = mask ? (int)mask->length : 0;
    g->width = mask && mask->child ? (int)mask->child->length : 0;
    if (!note(g, g->rows > 0 && g->rows <= MAX_ROWS && g->width > 0 && g->width <= MAX_LENGTH, "inputs: size", 0)) { g->rows = g->width = 0; }
    g->n_tokens = 0;
    for (i = 0; i < g->rows; i++) {
        for (g->lengths[i] = 0, t = 0; t < g->width; t++) {
            note(g, value2(mask, i, t) == 0 || (value2(mask, i, t) == 1 && g->lengths[i] == t), "inputs: mask", i);
            g->lengths[i] += value2(mask, i, t) == 1;
        }
        g->n_tokens += g->lengths[i];
        g->adv[i] = (float)value(tt_json_get(g->in, "adv"), i);
    }
    read_row(g, "logp", g->logp);
    read_row(g, "old", g->old);
    read_row(g, "ref", g->ref);
    read_row(g, "sampler", g->sampler);
    g->l_max = (int)l_max;
    note(g, l_max == g->l_max, "inputs: Lmax", 0);
    g->epsilon_low = (float)tt_json_number(g->in, "eps_lo", 0);
    g->epsilon_high = (float)tt_json_number(g->in, "eps_hi", 0);
    g->dual_c = (float)tt_json_number(g->in, "dual_c", 0);
    g->delta = (float)tt_json_number(g->in, "delta", 0);
    g->beta = (float)tt_json_number(g->in, "beta", 0);
}
static void golden_open(golden *g) {
    const char *path = getenv("TT_GOLDEN");
    tt_desc desc = TT_INIT;
    memset(g, 0, sizeof *g);
    g->loud = 1;
    desc.allocator = tt_test_allocator(&g->memory);
    g->ctx = tt_create(&desc);
    g->text.ctx = g->ctx;
    TT_CHECK_OK(g->ctx, tt_file_read(g->ctx, path && *path ? path : "tests/golden/rl.json", &g->text));
    g->root = tt_json_parse(g->ctx, g->text.data ? g->text.data : "", g->text.size);
    g->in = tt_json_get(g->root, "inputs");
    TT_CHECK(g->in != NULL);
}
static void golden_close(golden *g) {
    tt_json_free(g->ctx, g->root);
    tt_text_free(&g->text);
    tt_destroy(g->ctx);
    TT_CHECK_NO_LEAK(g->memory);
}

/* ---- rollouts ---- */
static int rows_of(golden *g, int n_groups, int size, const int *lengths, tt_rollouts *out) {
    if (n_groups * size > MAX_ROWS) { return note(g, 0, "too many rows", n_groups * size); }
    return note(g, make_rollouts(g->ctx, n_groups, size, lengths, END, out) == TT_OK, "tt_rollouts_create", 0);
}
static void set_kind(tt_rollout *r, tt_token_kind kind) { memset(r->kind + r->prompt_length, kind, (size_t)r->response_length); }
static int golden_rows(golden *g, int with_ref, tt_rollouts *all) {
    int i, t;
    if (!rows_of(g, 1, g->rows, g->lengths, all)) { return 0; }
    for (i = 0; i < g->rows; i++) {
        tt_rollout *r = &all->items[i];
        size_t n = (size_t)g->lengths[i];
        r->advantage = g->adv[i];
        r->old_logprobs = (float *)tt_alloc(g->ctx, n, sizeof(float));
        if (with_ref) { r->ref_logprobs = (float *)tt_alloc(g->ctx, n, sizeof(float)); }
        for (t = 0; t < g->lengths[i]; t++) {
            r->old_logprobs[t] = g->old[i][t];
            r->sampling_logprobs[t] = g->sampler[i][t];
            if (with_ref) { r->ref_logprobs[t] = g->ref[i][t]; }
        }
    }
    return 1;
}
typedef struct gradients { double at[MAX_ROWS][MAX_LENGTH]; } gradients;
/* Loss of rows [begin, end) of a batch, through the graph. */
static double loss_of(golden *g, const tt_rollouts *all, int begin, int end, const tt_grpo_config *c, gradients *out) {
    float values[MAX_ROWS * MAX_LENGTH], slopes[MAX_ROWS * MAX_LENGTH];
    int indices[MAX_ROWS], n = 0, i, t;
    tt_loss_batch batch = TT_INIT;
    tt_tensor *logprobs, *loss;
    double result;
    for (i = begin; i < end; i++) {
        indices[i - begin] = i;
        for (t = 0; t < g->lengths[i]; t++) { values[n++] = g->logp[i][t]; }
    }
    logprobs = tt_constant(g->ctx, 1, &n, values);
    logprobs->requires_grad = 1;
    batch.rollouts = all;
    batch.indices = indices;
    batch.n = end - begin;
    loss = tt_grpo_loss(g->ctx, logprobs, NULL, &batch, c, NULL);
    if (!note(g, tt_backward(g->ctx, loss) == TT_OK, tt_error(g->ctx), 0)) { tt_step_reset(g->ctx); return (double)NAN; }
    tt_tensor_get_grad(logprobs, slopes);
    for (n = 0, i = begin; i < end; i++) {
        memset(out->at[i], 0, sizeof out->at[i]);
        for (t = 0; t < g->lengths[i]; t++) { out->at[i][t] = (double)slopes[n++]; }
    }
    result = tt_item(loss);
    tt_step_reset(g->ctx);
    return result;
}
static tt_grpo_config config_of(const golden *g) {
    tt_grpo_config c = TT_INIT;
    c.epsilon_low = g->epsilon_low;
    c.epsilon_high = g->epsilon_high;
    c.max_completion_length = g->l_max;
    c.dual_clip = -1;
    return c;
}
/* Loss and gradient of the whole batch, and of its rows one by one, which must add up. */
static void check_batch(golden *g, const tt_rollouts *all, const tt_grpo_config *c, const tt_json *want, const char *name) {
    gradients whole, parts;
    double loss = loss_of(g, all, 0, g->rows, c, &whole), sum = 0;
    int i, t;
    near_node(g, loss, tt_json_get(want, "loss"), name, -1);
    for (i = 0; i < g->rows; i++) { sum += loss_of(g, all, i, i + 1, c, &parts); }
    if (c->aggregation != TT_BNPO) { near(g, sum, loss, name, -2); }
    for (i = 0; i < g->rows; i++) {
        for (t = 0; t < g->width; t++) {
            near_node(g, whole.at[i][t], element(element(tt_json_get(want, "dloss_dlogp"), i), t), name, i * g->width + t);
            if (c->aggregation != TT_BNPO) { note(g, whole.at[i][t] == parts.at[i][t], name, i * g->width + t); }
        }
    }
}
/* The same, and each token's loss; those of padding are 0. */
static void check_tokens(golden *g, const tt_rollouts *all, const tt_grpo_config *c, const tt_json *want, const char *name) {
    const tt_json *losses = tt_json_get(want, "per_token_loss");
    int i, t;
    check_batch(g, all, c, want, name);
    for (i = 0; i < g->rows; i++) {
        for (t = 0; t < g->width; t++) {
            const tt_rollout *r = &all->items[i];
            double f = r->ref_logprobs && t < g->lengths[i] ? (double)r->ref_logprobs[t] : (double)NAN;
            tt_token_kind kind = t < g->lengths[i] ? (tt_token_kind)r->kind[r->prompt_length + t] : TT_KIND_STUDENT;
            tt_token_loss x = tt_grpo_token_loss(c, (double)g->logp[i][t], (double)g->old[i][t], f, (double)r->advantage, kind);
            near_node(g, t < g->lengths[i] ? x.loss : 0, element(element(losses, i), t), name, i * g->width + t);
        }
    }
}

/* ---- advantages ---- */
static int group_size(golden *g, int *n) {
    const tt_json *group = tt_json_get(g->in, "group");
    int size = 0, i;
    *n = group ? (int)group->length : 0;
    while (size < *n && value(group, size) == 0) { size++; }
    if (!note(g, size > 0 && *n <= MAX_ROWS && *n % size == 0, "inputs: group", size)) { return 0; }
    for (i = 0; i < *n; i++) { note(g, value(group, i) == i / size, "inputs: group", i); }
    return size;
}
/* Advantages of the file's rewards, or of those given (n in one group; off_policy: the last one is). */
static int advantages_of(golden *g, const tt_grpo_config *c, const double *rewards, int n, int off_policy, double *out) {
    static const int ones[MAX_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const int32_t end[1] = {END};
    int lengths[MAX_ROWS], size = n, i;
    tt_rollouts all;
    if (!rewards) { size = group_size(g, &n); }
    if (size == 0) { return 0; }
    for (i = 0; !rewards && i < n; i++) {
        double length = value(tt_json_get(g->in, "len"), i);
        lengths[i] = (int)length;
        if (!note(g, length == lengths[i] && length >= 1 && length <= MAX_LENGTH, "inputs: len", i)) { return 0; }
    }
    if (!rows_of(g, n / size, size, rewards ? ones : lengths, &all)) { return 0; }
    if (off_policy) { note(g, tt_rollout_off_policy(&all, n - 1, end, 1, END) == TT_OK, "tt_rollout_off_policy", 0); }
    for (i = 0; i < n; i++) { all.items[i].rewards[0] = (float)(rewards ? rewards[i] : value(tt_json_get(g->in, "reward"), i)); }
    note(g, tt_grpo_advantages(&all, c, NULL, NULL) == TT_OK, tt_error(g->ctx), 0);
    for (i = 0; i < n; i++) { out[i] = (double)all.items[i].advantage; }
    tt_rollouts_free(&all);
    return n;
}
static void check_advantage(golden *g, const char *name, tt_advantage_type type, tt_scale_rewards scale, float eps, int biased) {
    const tt_json *want = section(g, "advantages", name);
    double got[MAX_ROWS];
    tt_grpo_config c = TT_INIT;
    int n, i;
    c.advantage = type;
    c.scale_rewards = scale;
    c.advantage_eps = eps;
    c.biased_std = biased;
    n = advantages_of(g, &c, NULL, 0, 0, got);
    for (i = 0; i < n; i++) { near_node(g, got[i], element(want, i), name, i); }
}
static void check_gdpo(golden *g) {
    static const float second[8] = {0, 1, 1, 0, 1, 0, 0, 0}, weights[2] = {1, 0.5f};
    static const int lengths[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    tt_grpo_config c = TT_INIT;
    tt_rollouts all;
    int i;
    c.advantage = TT_ADV_GDPO;
    c.advantage_eps = 1e-4f;
    if (!rows_of(g, 2, 4, lengths, &all)) { return; }
    all.n_rewards = 2;
    for (i = 0; i < 8; i++) {
        all.items[i].rewards[0] = (float)value(tt_json_get(g->in, "reward"), i);
        all.items[i].rewards[1] = second[i];
    }
    note(g, tt_grpo_advantages(&all, &c, weights, NULL) == TT_OK, tt_error(g->ctx), 0);
    for (i = 0; i < 8; i++) { near_node(g, (double)all.items[i].advantage, element(section(g, "advantages", "gdpo_two_rewards_w_1_0.5"), i), "gdpo", i); }
    tt_rollouts_free(&all);
}
static void check_few(golden *g, const char *name, const tt_grpo_config *c, const double *rewards, int n, int off_policy) {
    double got[MAX_ROWS];
    const tt_json *want = section(g, "advantages", name);
    int i;
    if (!want) { want = tt_json_get(section(g, "advantages", "edge"), name); }
    advantages_of(g, c, rewards, n, off_policy, got);
    for (i = 0; i < n; i++) { near_node(g, got[i], want && want->type == TT_JSON_NUMBER ? want : element(want, i), name, i); }
}
/* The file notes what a float mean of equal rewards would leave behind; here nothing is left. */
static void check_residues(golden *g) {
    static const double tenths[10] = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1};
    const tt_json *edge = section(g, "advantages", "edge");
    double got[MAX_ROWS];
    tt_grpo_config c = TT_INIT;
    int i;
    for (i = 1; i <= 10; i++) { advantages_of(g, &c, tenths, i, 0, got); note(g, got[0] == 0 && got[i - 1] == 0, "equal rewards", i); }
    near_node(g, 0, tt_json_get(edge, "ten_times_0.1_double_mean_minus_0.1"), "residue", 0);
    near_node(g, 0, tt_json_get(edge, "float32_0.1_eight_times_sum_mean_residue"), "residue", 1);
}
static void check_advantages(golden *g) {
    static const double equal[3] = {1, 1, 1}, single[1] = {0.7}, pair[2] = {1, 0}, last[4] = {0, 1, 0, 1}, only[4] = {0, 0, 0, 1};
    tt_grpo_config c = TT_INIT;
    check_advantage(g, "trl_group", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-4f, 0);
    check_advantage(g, "trl_batch", TT_ADV_GRPO, TT_SCALE_BATCH, 1e-4f, 0);
    check_advantage(g, "trl_none_dr_grpo", TT_ADV_GRPO, TT_SCALE_NONE, 0, 0);
    check_advantage(g, "verl_grpo_eps1e-6", TT_ADV_GRPO, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "openrlhf_group_norm_eps1e-9", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-9f, 0);
    check_advantage(g, "tiny_grpo_eps1e-8", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-8f, 0);
    check_advantage(g, "grpo_zero_biased_std_eps1e-4", TT_ADV_GRPO, TT_SCALE_GROUP, 1e-4f, 1);
    check_advantage(g, "rloo", TT_ADV_RLOO, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "opo", TT_ADV_OPO, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "passk_best_minus_second", TT_ADV_PASSK, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "passk_best_minus_second_unnormalised", TT_ADV_PASSK, TT_SCALE_NONE, 0, 0);
    check_advantage(g, "reinforce_pp_baseline_verl", TT_ADV_REINFORCE_PP_BASELINE, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "reinforce_pp_baseline_openrlhf", TT_ADV_REINFORCE_PP_BASELINE, TT_SCALE_GROUP, 0, 1);
    check_advantage(g, "reinforce_pp_verl_gamma1", TT_ADV_REINFORCE_PP, TT_SCALE_GROUP, 0, 0);
    check_advantage(g, "gpg_alpha", TT_ADV_GPG, TT_SCALE_GROUP, 0, 0);
    check_gdpo(g);
    check_few(g, "zero_variance_group", &c, equal, 3, 0);
    check_few(g, "single_sample_ours", &c, single, 1, 0);
    c.keep_single = 1;
    check_few(g, "single_sample_verl_mean0_std1_reward0.7", &c, single, 1, 0);
    c.keep_single = 0;
    c.advantage_eps = 1e-4f;
    check_few(g, "g2_pair_1_0_trl", &c, pair, 2, 0);
    c.advantage = TT_ADV_LUFFY;
    c.advantage_eps = 0;
    check_few(g, "luffy_split_last_row_off_policy", &c, last, 4, 1);
    check_few(g, "luffy_split_all_on_policy_equal", &c, only, 4, 1);
    check_residues(g);
}

/* ---- losses ---- */
static void check_loss(golden *g, const tt_rollouts *all, const tt_grpo_config *c, const char *name) {
    check_tokens(g, all, c, section(g, "token_losses_token_mean", name), name);
}
static void check_kl_losses(golden *g) {
    static const struct { const char *name; tt_kl_type kl; } forms[] = {
        {"kl_k1", TT_KL_K1}, {"kl_k2", TT_KL_K2}, {"kl_k3", TT_KL_K3}, {"kl_k3_clamped_verl", TT_KL_K3_CLAMP}, {"kl_k3_times_ratio", TT_KL_K3_RATIO}
    };
    tt_rollouts all;
    tt_grpo_config c = config_of(g);
    int i;
    size_t k;
    if (!golden_rows(g, 1, &all)) { return; }
    c.beta = g->beta;
    check_loss(g, &all, &c, "ppo_clip_plus_beta_k3");
    for (i = 0; i < g->rows; i++) { all.items[i].advantage = 0; }
    c.beta = 1;
    for (k = 0; k < sizeof forms / sizeof *forms; k++) { c.kl = forms[k].kl; check_loss(g, &all, &c, forms[k].name); }
    tt_rollouts_free(&all);
}
static void check_token_losses(golden *g) {
    tt_rollouts all;
    tt_grpo_config c = config_of(g);
    int i;
    if (!golden_rows(g, 0, &all)) { return; }
    check_loss(g, &all, &c, "ppo_clip");
    c.delta = g->delta;
    check_loss(g, &all, &c, "ppo_two_sided_delta1.5");
    c.delta = 0;
    c.loss = TT_LOSS_CISPO;
    check_loss(g, &all, &c, "cispo_trl_cap5");
    c.cispo_epsilon_max = 0.2f;
    check_loss(g, &all, &c, "cispo_trl_cap0.2_default_trap");
    c.loss = TT_LOSS_CISPO_CLAMP;
    check_loss(g, &all, &c, "cispo_verl");
    c.token_loss = tt_loss_sapo;
    check_loss(g, &all, &c, "sapo");
    c.token_loss = NULL;
    c.loss = TT_LOSS_REINFORCE;
    check_loss(g, &all, &c, "gpg_reinforce");
    c = config_of(g);
    c.epsilon_low = c.epsilon_high = 0;
    c.dual_clip = g->dual_c;
    check_loss(g, &all, &c, "ppo_clip_sym_dual3");
    c.aas = TT_AAS_LUFFY;
    for (i = 0; i < g->rows; i++) { set_kind(&all.items[i], TT_KIND_GUIDED); }
    check_loss(g, &all, &c, "luffy_shape_0.1");
    for (i = 0; i < g->rows; i++) { set_kind(&all.items[i], TT_KIND_OFF_POLICY); }      /* the same tokens, given by the user */
    c.aas = TT_AAS_RELEASED;
    check_loss(g, &all, &c, "luffy_shape_0.1");
    c.luffy_gamma = -1;
    check_loss(g, &all, &c, "luffy_raw_p");
    tt_rollouts_free(&all);
    if (!golden_rows(g, 0, &all)) { return; }
    for (i = 0; i < g->rows; i++) {                                     /* no old log-probs: those of now, ratio 1 */
        tt_free(g->ctx, all.items[i].old_logprobs, (size_t)g->lengths[i], sizeof(float));
        all.items[i].old_logprobs = NULL;
    }
    c = config_of(g);
    check_batch(g, &all, &c, section(g, "token_losses_token_mean", "on_policy_ratio1"), "on_policy_ratio1");
    for (i = 0; i < g->rows * g->width; i++) {
        int row = i / g->width, t = i % g->width;
        near_node(g, t < g->lengths[row] ? -(double)g->adv[row] : 0, element(element(tt_json_get(section(g, "token_losses_token_mean", "on_policy_ratio1"), "per_token_loss"), row), t), "on_policy_ratio1", i);
    }
    tt_rollouts_free(&all);
    check_kl_losses(g);
}
static void check_aggregations(golden *g) {
    static const struct { const char *name; tt_aggregation how; } forms[] = {
        {"grpo", TT_SEQ_MEAN_TOKEN_MEAN}, {"bnpo", TT_BNPO}, {"dr_grpo", TT_DR_GRPO}, {"dapo", TT_TOKEN_MEAN}, {"token-mean", TT_TOKEN_MEAN},
        {"seq-mean-token-sum", TT_SEQ_MEAN_TOKEN_SUM}, {"seq-mean-token-mean", TT_SEQ_MEAN_FILLED}, {"seq-mean-token-sum-norm", TT_SEQ_SUM_NORM}
    };
    tt_rollouts all;
    tt_grpo_config c = config_of(g);
    size_t k;
    if (!golden_rows(g, 0, &all)) { return; }
    for (k = 0; k < sizeof forms / sizeof *forms; k++) {
        c.aggregation = forms[k].how;
        check_tokens(g, &all, &c, section(g, "aggregation_of_ppo_clip", forms[k].name), forms[k].name);
    }
    tt_rollouts_free(&all);
}
/* Micro-batches of one row each; only BNPO depends on the split. */
static void check_micro_batches(golden *g) {
    static const struct { const char *name; tt_aggregation how; } forms[] = {
        {"full_batch_token_mean", TT_TOKEN_MEAN}, {"trl_dapo_global_denominator", TT_TOKEN_MEAN}, {"bnpo_or_verl_legacy_mean_of_micro_means", TT_BNPO},
        {"verl_seq_mean_token_sum_norm_sum", TT_SEQ_SUM_NORM}, {"luffy_remove_token_mean", TT_SEQ_SUM_NORM}, {"trl_dr_grpo", TT_DR_GRPO}
    };
    tt_rollouts all;
    gradients ignored;
    tt_grpo_config c = config_of(g);
    size_t k;
    int i;
    if (!golden_rows(g, 0, &all)) { return; }
    for (k = 0; k < sizeof forms / sizeof *forms; k++) {
        double sum = 0;
        c.aggregation = forms[k].how;
        for (i = 0; i < g->rows; i++) { sum += loss_of(g, &all, i, i + 1, &c, &ignored); }
        near_node(g, forms[k].how == TT_BNPO ? sum / g->rows : sum, section(g, "aggregation_microbatch_1_seq_each", forms[k].name), forms[k].name, 0);
    }
    tt_rollouts_free(&all);
}

/* ---- losses of a sequence ---- */
static void check_sequence(golden *g, tt_loss_type loss, tt_aggregation how, float epsilon_low, float epsilon_high, const tt_json *want, const char *name) {
    tt_rollouts all;
    tt_grpo_config c = config_of(g);
    c.loss = loss;
    c.aggregation = how;
    c.epsilon_low = epsilon_low;
    c.epsilon_high = epsilon_high;
    if (!golden_rows(g, 0, &all)) { return; }
    check_batch(g, &all, &c, want, name);
    tt_rollouts_free(&all);
}
/* With A = 1 and no clip the gradient of a token is -s / (n B). */
static void check_gspo_ratio(golden *g) {
    tt_rollouts all;
    gradients slopes;
    tt_grpo_config c = config_of(g);
    int i;
    c.loss = TT_LOSS_GSPO;
    c.aggregation = TT_SEQ_MEAN_TOKEN_MEAN;
    c.epsilon_low = 1;
    c.epsilon_high = 1e6f;
    if (!golden_rows(g, 0, &all)) { return; }
    for (i = 0; i < g->rows; i++) { all.items[i].advantage = 1; }
    loss_of(g, &all, 0, g->rows, &c, &slopes);
    for (i = 0; i < g->rows; i++) { near_node(g, -slopes.at[i][0] * g->lengths[i] * g->rows, element(section(g, "gspo_trl", "seq_ratio"), i), "seq_ratio", i); }
    tt_rollouts_free(&all);
}
static void check_gspo_trl(golden *g) {
    check_sequence(g, TT_LOSS_GSPO, TT_SEQ_MEAN_TOKEN_MEAN, g->epsilon_low, g->epsilon_high, section(g, "gspo_trl", "grpo"), "gspo grpo");
    check_sequence(g, TT_LOSS_GSPO, TT_TOKEN_MEAN, g->epsilon_low, g->epsilon_high, section(g, "gspo_trl", "dapo"), "gspo dapo");
    check_gspo_ratio(g);
}
static void check_gspo_verl(golden *g) {
    check_sequence(g, TT_LOSS_GSPO_TOKEN, TT_SEQ_MEAN_FILLED, g->epsilon_low, g->epsilon_high, section(g, "gspo_verl", NULL), "gspo_verl");
}
static void check_gmpo(golden *g) { check_sequence(g, TT_LOSS_GMPO, TT_SEQ_MEAN_TOKEN_MEAN, 0, 0, section(g, "gmpo_verl_clip0.4", NULL), "gmpo"); }
static void check_rloo(golden *g) {
    check_sequence(g, TT_LOSS_RLOO, TT_SEQ_MEAN_TOKEN_MEAN, 0.2f, 0.2f, section(g, "reinforce_rloo_sequence_loss_trl", NULL), "rloo loss");
}
/* The gradient of a token is -phi A / tokens. */
static void check_vespo(golden *g) {
    const tt_json *want = section(g, "vespo_trl", NULL);
    tt_rollouts all;
    gradients slopes;
    tt_grpo_config c = config_of(g);
    int i, t;
    c.token_loss = tt_loss_vespo;
    if (!golden_rows(g, 0, &all)) { return; }
    check_batch(g, &all, &c, want, "vespo");
    loss_of(g, &all, 0, g->rows, &c, &slopes);
    for (i = 0; i < g->rows; i++) {
        near_node(g, -slopes.at[i][0] * g->n_tokens / (double)g->adv[i], element(tt_json_get(want, "phi"), i), "phi", i);
        for (t = 0; t < g->width; t++) {
            near_node(g, slopes.at[i][t] * g->n_tokens * (double)g->logp[i][t], element(element(tt_json_get(want, "per_token_loss"), i), t), "vespo token", i * g->width + t);
        }
    }
    tt_rollouts_free(&all);
}

/* ---- sampler against trainer: with REINFORCE and A = 1 the gradient of a token is -weight / tokens ---- */
static void weights_of(golden *g, const tt_grpo_config *settings, const float *advantages, gradients *out) {
    tt_grpo_config c = *settings;
    tt_rollouts all;
    int i, t;
    memset(out, 0, sizeof *out);
    c.loss = TT_LOSS_REINFORCE;
    if (!golden_rows(g, 0, &all)) { return; }
    for (i = 0; i < g->rows; i++) { all.items[i].advantage = advantages ? advantages[i] : 1; }
    loss_of(g, &all, 0, g->rows, &c, out);
    for (i = 0; i < g->rows; i++) { for (t = 0; t < g->width; t++) { out->at[i][t] *= -g->n_tokens / (double)all.items[i].advantage; } }
    tt_rollouts_free(&all);
}
/* padding: what the file says where there is no token. */
static void check_weights(golden *g, const char *name, tt_mismatch how, float low, float high, double padding) {
    const tt_json *want = section(g, "mismatch_weights", name);
    tt_grpo_config c = config_of(g);
    gradients got;
    int i, t, per_token = want && want->child && want->child->type == TT_JSON_ARRAY;
    c.mismatch = how;
    c.mismatch_low = low;
    c.mismatch_high = high;
    weights_of(g, &c, NULL, &got);
    for (i = 0; i < g->rows; i++) {
        if (!per_token) { near_node(g, how == TT_MISMATCH_GEOMETRIC_MASK ? got.at[i][0] != 0 : got.at[i][0], element(want, i), name, i); }
        for (t = 0; per_token && t < g->width; t++) { near_node(g, t < g->lengths[i] ? got.at[i][t] : padding, element(element(want, i), t), name, i * g->width + t); }
    }
}
static void check_mismatch(golden *g) {
    const tt_json *bounds = section(g, "mismatch_weights", "bounds");
    float low = (float)value(bounds, 0), high = (float)value(bounds, 1);
    near_node(g, 0.5, element(bounds, 0), "bounds", 0);
    near_node(g, 1.05, element(bounds, 1), "bounds", 1);
    check_weights(g, "token_ratio", TT_MISMATCH_TOKEN_TRUNCATE, 0, 1e9f, 1);
    check_weights(g, "seq_ratio", TT_MISMATCH_SEQ_TRUNCATE, 0, 1e9f, 1);
    check_weights(g, "trl_token_truncate", TT_MISMATCH_TOKEN_TRUNCATE, low, high, 1);
    check_weights(g, "trl_token_mask", TT_MISMATCH_TOKEN_MASK, low, high, 1);
    check_weights(g, "trl_sequence_truncate", TT_MISMATCH_SEQ_TRUNCATE, low, high, 1);
    check_weights(g, "trl_sequence_mask_default_cap_3", TT_MISMATCH_SEQ_MASK, 0, 0, 1);
    check_weights(g, "trl_sequence_mask", TT_MISMATCH_SEQ_MASK, low, high, 1);
    check_weights(g, "verl_token", TT_MISMATCH_TOKEN_TRUNCATE, 0, high, 0);
    check_weights(g, "verl_sequence", TT_MISMATCH_SEQ_TRUNCATE, 0, high, 1);
    check_weights(g, "openrlhf_seq_mask_tis_keep", TT_MISMATCH_GEOMETRIC_MASK, low, high, 1);
}
/* A response with A < 0 leaves the loss exactly where its mean gap exceeds the threshold. */
static void check_off_policy_mask(golden *g) {
    static const float against[MAX_ROWS] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    static const char *const names[2] = {"delta_0.5", "delta_-0.1"};
    tt_grpo_config c = config_of(g);
    gradients got;
    int i, k, side;
    for (k = 0; k < 2; k++) {
        const tt_json *want = section(g, "off_policy_sequence_mask", names[k]), *gaps = tt_json_get(want, "mean_kl");
        c.off_policy_mask_threshold = k ? -0.1f : 0.5f;
        weights_of(g, &c, g->adv, &got);
        for (i = 0; i < g->rows; i++) { near_node(g, got.at[i][0], element(tt_json_get(want, "keep"), i), names[k], i); }
        for (i = 0; i < g->rows; i++) {
            for (side = 0; side < 2; side++) {
                c.off_policy_mask_threshold = (float)(value(gaps, i) + (side ? 1e-5 : -1e-5));
                weights_of(g, &c, against, &got);
                near(g, got.at[i][0], side, "mean_kl", i);
            }
        }
    }
}
static void check_kl_in_reward(golden *g) {
    static const float rewards[3] = {1, 0, 0};
    const tt_json *want = section(g, "kl_in_reward", "trl_rloo_k1_beta0.05");
    tt_rollouts all;
    tt_grpo_config c = config_of(g);
    int i;
    c.kl_in_reward = 1;
    c.kl = TT_KL_K1;
    c.beta = 0.05f;
    if (!golden_rows(g, 1, &all)) { return; }
    for (i = 0; i < g->rows && i < 3; i++) { all.items[i].rewards[0] = rewards[i]; }
    note(g, tt_grpo_advantages(&all, &c, NULL, NULL) == TT_OK, tt_error(g->ctx), 0);
    for (i = 0; i < g->rows && i < 3; i++) { near_node(g, (double)all.items[i].reward, element(want, i), "kl_in_reward", i); }
    tt_rollouts_free(&all);
}

/* ---- advantage-aware shaping ---- */
static double gamma_at(const tt_grpo_config *c, double a) {      /* p / factor = p + gamma */
    tt_token_loss x = tt_grpo_token_loss(c, log(0.5), log(0.5), (double)NAN, a, TT_KIND_GUIDED);
    return 0.5 / x.factor - 0.5;
}
static void check_shaping_grid(golden *g) {
    const tt_json *at;
    int i = 0;
    for (at = section(g, "aas", "grid")->child; at; at = at->next, i++) {
        tt_grpo_config c = TT_INIT;
        double p = tt_json_number(at, "p", 0), a = tt_json_number(at, "A", 0), want = tt_json_number(at, "loss", 99);
        const tt_json *gamma = tt_json_get(at, "gamma"), *denom = tt_json_get(at, "denom");
        double near_pole = denom && denom->type == TT_JSON_NUMBER ? 1e-10 / fabs(denom->number) * fabs(want) : 0;      /* gamma is a float */
        tt_token_loss x;
        c.aas = strcmp(tt_json_text(at, "variant", ""), "formula") == 0 ? TT_AAS_FORMULA : TT_AAS_RELEASED;
        x = tt_grpo_token_loss(&c, log(p), log(p) - 0.05, (double)NAN, a, TT_KIND_GUIDED);
        note(g, fabs(x.loss - want) <= 1e-7 * (1 + fabs(want)) + near_pole, "aas grid: loss", i);
        note(g, fabs(x.dloss - tt_json_number(at, "dloss_dlogp", 99)) <= 1e-7 * (1 + fabs(want)) + near_pole, "aas grid: slope", i);
        note(g, x.fallback == (gamma && gamma->type == TT_JSON_NULL), "aas grid: fallback", i);
        if (x.fallback) { continue; }
        note(g, fabs(gamma_at(&c, a) - gamma->number) <= 1e-9, "aas grid: gamma", i);
        note(g, fabs(p / x.factor - denom->number) <= 1e-9, "aas grid: denom", i);
    }
    note(g, i > 0, "aas grid", i);
}
static void check_shaping_points(golden *g) {
    static const char *const variants[2] = {"released", "formula"};
    const tt_json *at;
    int k, i = 0;
    for (k = 0; k < 2; k++) {
        tt_grpo_config c = TT_INIT;
        c.aas = k ? TT_AAS_FORMULA : TT_AAS_RELEASED;
        for (at = tt_json_get(section(g, "aas", "gamma"), variants[k])->child; at; at = at->next) { note(g, fabs(gamma_at(&c, atof(at->key)) - at->number) <= 1e-9, "aas gamma", k); }
    }
    for (at = section(g, "aas", "fallback_clipped")->child; at; at = at->next, i++) {
        tt_grpo_config c = TT_INIT;
        tt_token_loss x = tt_grpo_token_loss(&c, tt_json_number(at, "logp", 0), tt_json_number(at, "old", 0), (double)NAN, tt_json_number(at, "A", 0), TT_KIND_GUIDED);
        near_node(g, x.loss, tt_json_get(at, "loss"), "aas fallback", i);
        near_node(g, x.dloss, tt_json_get(at, "dloss_dlogp"), "aas fallback", i);
        note(g, x.fallback, "aas fallback", i);
    }
    for (i = 0, at = section(g, "aas", "pole_released_ratio")->child; at; at = at->next, i++) {
        tt_grpo_config c = TT_INIT;
        double p = atof(at->key + 2);
        tt_token_loss x = tt_grpo_token_loss(&c, log(p), log(p), (double)NAN, 1, TT_KIND_GUIDED);
        note(g, at->key[0] == 'p' && fabs(x.dloss - at->number) <= (1e-6 + 5e-11 / fabs(p - 0.001)) * fabs(at->number), "aas pole", i);
    }
    {   /* at the pole itself the factor is guarded */
        tt_grpo_config c = TT_INIT;
        tt_token_loss x = tt_grpo_token_loss(&c, log((double)0.001f), 0, (double)NAN, 1, TT_KIND_GUIDED);
        note(g, isfinite(x.loss) && isfinite(x.dloss), "aas pole", -1);
    }
}
static void check_shaping_batches(golden *g) {
    int k, i;
    for (k = 0; k < 2; k++) {
        const char *name = k ? "formula" : "released";
        tt_rollouts all;
        tt_grpo_config c = config_of(g);
        c.epsilon_low = c.epsilon_high = c.dual_clip = 0;
        c.aas = k ? TT_AAS_FORMULA : TT_AAS_RELEASED;
        if (!golden_rows(g, 0, &all)) { return; }
        set_kind(&all.items[0], TT_KIND_GUIDED);
        check_tokens(g, &all, &c, tt_json_get(section(g, "aas", "mixed_batch_row0_guided_rows12_on_policy_dual3"), name), name);
        for (i = 0; i < g->rows; i++) { set_kind(&all.items[i], TT_KIND_GUIDED); }
        check_tokens(g, &all, &c, tt_json_get(section(g, "aas", "guided_batch_token_mean"), name), name);
        tt_rollouts_free(&all);
    }
}
static void check_shaping(golden *g) {
    check_shaping_grid(g);
    check_shaping_points(g);
    check_shaping_batches(g);
}

/* ---- evaluation, lengths ---- */
static void check_pass_at_k(golden *g) {
    const tt_json *at;
    int n, c, k, i = 0;
    for (at = section(g, "pass_at_k", NULL)->child; at; at = at->next, i++) {
        if (note(g, sscanf(at->key, "n%d_c%d_k%d", &n, &c, &k) == 3, "pass_at_k", i)) { near_node(g, tt_pass_at_k(n, c, k), at, "pass_at_k", i); }
    }
}
static void check_overlong(golden *g) {
    const tt_json *at;
    int limit, cache, n, i = 0;
    for (at = section(g, "soft_overlong", NULL)->child; at; at = at->next, i++) {
        tt_grpo_config c = TT_INIT;
        if (!note(g, sscanf(at->key, "L%d_cache%d_n%d", &limit, &cache, &n) == 3, "soft_overlong", i)) { continue; }
        c.max_completion_length = limit;
        c.overlong_cache = cache;
        near_node(g, tt_grpo_overlong(&c, n), tt_json_get(at, "trl"), "soft_overlong trl", i);
        c.overlong_factor = 1;
        near_node(g, tt_grpo_overlong(&c, n), tt_json_get(at, "verl"), "soft_overlong verl", i);
    }
}

/* ---- the softmax: logits 2, 1, 0, -1, all of them weights of a head over one feature 1 ---- */
static void softmax_of(golden *g, float temperature, double *logprobs, double *h, double *dh) {
    static const float logits[4] = {2, 1, 0, -1}, ones[4] = {1, 1, 1, 1};
    static const int32_t targets[4] = {0, 1, 2, 3};
    int shape[2] = {4, 1}, i;
    float values[4], entropies[4], slopes[4];
    tt_tensor *w = tt_constant(g->ctx, 2, shape, logits), *x = tt_constant(g->ctx, 2, shape, ones), *entropy = NULL, *lp;
    w->requires_grad = 1;
    lp = tt_token_logprobs(g->ctx, x, w, targets, temperature, &entropy);
    note(g, lp && tt_tensor_get(lp, values) == TT_OK && tt_tensor_get(entropy, entropies) == TT_OK, "softmax", 0);
    note(g, tt_backward(g->ctx, tt_mean(g->ctx, entropy)) == TT_OK && tt_tensor_get_grad(w, slopes) == TT_OK, "softmax", 1);
    for (i = 0; i < 4; i++) { logprobs[i] = (double)values[i]; dh[i] = (double)slopes[i]; }
    *h = (double)entropies[0];
    tt_step_reset(g->ctx);
}
static void check_temperature(golden *g) {
    const tt_json *at;
    double logprobs[4], h, dh[4];
    int i;
    for (at = section(g, "temperature_logprob", NULL)->child; at; at = at->next) {
        softmax_of(g, (float)atof(at->key + 1), logprobs, &h, dh);
        for (i = 0; i < 4; i++) { near_node(g, logprobs[i], element(at, i), at->key, i); }
    }
}
static void check_entropy(golden *g) {
    const tt_json *at;
    double logprobs[4], h, dh[4];
    int i;
    for (at = section(g, "entropy", NULL)->child; at; at = at->next) {
        softmax_of(g, (float)atof(at->key + 1), logprobs, &h, dh);
        near_node(g, h, tt_json_get(at, "H"), at->key, -1);
        for (i = 0; i < 4; i++) { near_node(g, dh[i], element(tt_json_get(at, "dH_dlogits"), i), at->key, i); }
    }
}
static void check_nucleus(golden *g) {
    double logprobs[4], h, dh[4], kept;
    softmax_of(g, 1, logprobs, &h, dh);
    kept = exp(logprobs[0]) + exp(logprobs[1]);
    near_node(g, kept, section(g, "nucleus_vs_full_logprob", "kept_mass_top2"), "nucleus", 0);
    near_node(g, -log(kept), section(g, "nucleus_vs_full_logprob", "bias_added_to_sampler_logp"), "nucleus", 1);
}

/* ---- optimizer: two weights of a model have a gradient ---- */
static void check_adamw(golden *g) {
    static const float steps[2][2] = {{0.3f, -0.4f}, {3, 4}};
    const tt_json *want = section(g, "adamw_two_steps", NULL);
    tt_model_config config = TT_INIT;
    tt_adamw_desc desc = TT_INIT;
    tt_optimizer_stats stats;
    tt_optimizer *adamw;
    tt_model *model;
    tt_tensor *w;
    int k, i;
    config.vocab_size = 2;
    config.hidden_size = 2;
    config.num_hidden_layers = config.num_attention_heads = 1;
    config.intermediate_size = 2;
    desc.weight_decay = 0.01f;
    desc.max_grad_norm = 1;
    model = tt_model_create(g->ctx, &config, 1);
    adamw = tt_adamw_create(model, &desc);
    w = tt_model_param(model, 0);
    tt_test_write(g->ctx, (float *)w->data, 1);
    tt_test_write(g->ctx, (float *)w->data + 1, -2);
    for (k = 0; k < 2; k++) {
        tt_test_write(g->ctx, tt_grad(w), steps[k][0]);
        tt_test_write(g->ctx, tt_grad(w) + 1, steps[k][1]);
        note(g, w->ndim == 2 && tt_optimizer_step(adamw, 0.1f, &stats) == TT_OK, "adamw", k);
        near_node(g, stats.grad_norm, tt_json_get(element(want, k), "grad_norm"), "adamw: grad_norm", k);
        for (i = 0; i < 2; i++) { near_node(g, (double)TT_F(w)[i], element(tt_json_get(element(want, k), "w"), i), "adamw: weight", i); }
    }
    tt_optimizer_destroy(adamw);
    tt_model_destroy(model);
}
static void check_schedules(golden *g) {
    static const struct { const char *name; tt_schedule_type type; } forms[] = {{"linear_warmup0", TT_LINEAR}, {"cosine_warmup0_min0", TT_COSINE}, {"constant", TT_CONSTANT}};
    size_t k;
    int i;
    for (k = 0; k < 3; k++) {
        tt_schedule s = TT_INIT;
        s.lr = 1;
        s.total_steps = 4;
        s.type = forms[k].type;
        for (i = 0; i < 5; i++) { near_node(g, (double)tt_learning_rate(&s, i), element(section(g, "lr_schedules_step0..4_of_4_lr1", forms[k].name), i), forms[k].name, i); }
    }
}

/* ---- all of them ---- */
static const struct { const char *name; void (*check)(golden *g); } sections[] = {
    {"inputs", read_inputs}, {"advantages", check_advantages}, {"pass_at_k", check_pass_at_k}, {"token_losses_token_mean", check_token_losses},
    {"aggregation_of_ppo_clip", check_aggregations}, {"aggregation_microbatch_1_seq_each", check_micro_batches}, {"gspo_trl", check_gspo_trl},
    {"gspo_verl", check_gspo_verl}, {"gmpo_verl_clip0.4", check_gmpo}, {"mismatch_weights", check_mismatch}, {"vespo_trl", check_vespo},
    {"off_policy_sequence_mask", check_off_policy_mask}, {"kl_in_reward", check_kl_in_reward}, {"reinforce_rloo_sequence_loss_trl", check_rloo},
    {"temperature_logprob", check_temperature}, {"entropy", check_entropy}, {"nucleus_vs_full_logprob", check_nucleus}, {"soft_overlong", check_overlong},
    {"aas", check_shaping}, {"adamw_two_steps", check_adamw}, {"lr_schedules_step0..4_of_4_lr1", check_schedules}
};
enum { N_SECTIONS = sizeof sections / sizeof *sections };
/* Checks section k, or with k = 0, whose numbers all of them use, every one. */
static int failures_of(golden *g, int k) {
    int i;
    g->failures = 0;
    sections[0].check(g);
    for (i = k ? k : 1; i < (k ? k + 1 : N_SECTIONS); i++) { if (g->rows > 0) { sections[i].check(g); } }
    return g->failures;
}
TT_TEST(every_value_of_the_file_is_reproduced) {
    golden g;
    const tt_json *at;
    int k, known;
    golden_open(&g);
    TT_REQUIRE(g.in != NULL);
    for (at = g.root->child; at; at = at->next) {
        for (known = 0, k = 0; k < N_SECTIONS; k++) { known += strcmp(at->key, sections[k].name) == 0; }
        if (!TT_CHECK_INT(known, 1)) { printf("  section %s\n", at->key); }
    }
    TT_REQUIRE(g.root->length == N_SECTIONS);
    TT_CHECK_INT(failures_of(&g, 0), 0);
    golden_close(&g);
}
/* Other inputs than the file's own may be without effect. Where a clip has bitten, no result depends on the inputs of the shaping's single points. */
static int is_point(const char *key) { return key && (strcmp(key, "p") == 0 || strcmp(key, "logp") == 0 || strcmp(key, "old") == 0); }
/* Changes each number below node in turn; returns how many there are, *unseen how many changes went unseen. */
static int damage(golden *g, const tt_json *node, int k, int *unseen) {
    const tt_json *at;
    int n = 0;
    if (node->type == TT_JSON_NUMBER && is_point(node->key)) { return 0; }
    if (node->type == TT_JSON_NUMBER) {
        double *number = &((tt_json *)(uintptr_t)node)->number, was = *number;
        *number = was + 1e-3 * (fabs(was) > 1 ? fabs(was) : 1);
        if (failures_of(g, k) == 0) {
            ++*unseen;
            printf("  %s: %.9g may be changed unseen\n", sections[k].name, was);
        }
        *number = was;
        return 1;
    }
    for (at = node->child; at; at = at->next) { n += damage(g, at, k, unseen); }
    return n;
}
TT_TEST(a_change_of_a_thousandth_is_seen) {
    golden g;
    int k, n = 0, unseen = 0;
    golden_open(&g);
    TT_REQUIRE(g.in != NULL);
    g.loud = 0;
    for (k = getenv("TT_GOLDEN") ? 1 : 0; k < N_SECTIONS; k++) { n += damage(&g, section(&g, sections[k].name, NULL), k, &unseen); }
    TT_CHECK_INT(unseen, 0);
    TT_CHECK(n > 1000);
    TT_CHECK_INT(failures_of(&g, 0), 0);
    golden_close(&g);
}

TT_MAIN(every_value_of_the_file_is_reproduced, a_change_of_a_thousandth_is_seen)
