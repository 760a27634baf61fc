/* losses.h - policy losses beyond those of thinktuning.h, each a token_loss for tt_grpo_config
 *
 *     tt_vespo vespo = TT_INIT;                     (zeros are the defaults)
 *     config.token_loss = tt_loss_vespo;
 *     config.token_loss_user = &vespo;              (NULL = the defaults)
 *
 * SAPO, VESPO, DRO, DPPO, and the two that choose tokens by their covariance, CLIP_COV and KL_COV, which also
 * want config.token_loss_begin = tt_covariance_begin. Include it behind thinktuning.h; it uses the public API
 * alone. A loss of your own looks like tt_loss_dro below. */
#ifndef TT_LOSSES_H
#define TT_LOSSES_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

static inline double tt_loss_default(float value, double zero) { return value != 0 ? (double)value : zero; }

/* ---- SAPO: a soft gate instead of the clip ----
 * -A 4/tau sigmoid(tau (r - 1)).   Source: Gao et al. 2025, arXiv 2511.20347; TRL sapo. */
typedef struct tt_sapo { float tau_pos, tau_neg; } tt_sapo;   /* 0 = 1, 1.05 */

static inline void tt_loss_sapo(const tt_loss_input *in, tt_token_loss *out) {
    static const tt_sapo defaults = TT_INIT;
    const tt_sapo *c = in->user ? (const tt_sapo *)in->user : &defaults;
    double a = in->advantage;
    double tau = a > 0 ? tt_loss_default(c->tau_pos, 1) : tt_loss_default(c->tau_neg, (double)1.05f);
    double s = 1 / (1 + exp(-tau * (in->ratio - 1)));
    out->loss = -a * 4 / tau * s;
    out->dloss = -a * 4 * s * (1 - s) * in->dratio;
}

/* ---- VESPO: a smooth weight of the whole response ----
 * -sg(phi) A log p, phi = w^k exp(lambda (1 - w)), w = product of r over the response.
 * Source: TRL vespo. */
typedef struct tt_vespo { float k_pos, lambda_pos, k_neg, lambda_neg; } tt_vespo;   /* 0 = 2, 3, 3, 2 */

static inline void tt_loss_vespo(const tt_loss_input *in, tt_token_loss *out) {
    static const tt_vespo defaults = TT_INIT;
    const tt_vespo *c = in->user ? (const tt_vespo *)in->user : &defaults;
    int up = in->advantage >= 0;
    double k = up ? tt_loss_default(c->k_pos, 2) : tt_loss_default(c->k_neg, 3);
    double lambda = up ? tt_loss_default(c->lambda_pos, 3) : tt_loss_default(c->lambda_neg, 2);
    double x = in->response_log_ratio, log_w = x < log(1e-8) ? log(1e-8) : x > 20 ? 20 : x;
    double phi = exp(lambda + k * log_w - lambda * exp(log_w));
    out->loss = -phi * in->advantage * in->logp;
    out->dloss = -phi * in->advantage;
}

/* ---- DRO: a squared distance instead of the clip ----
 * -A log p + beta/2 (log r)^2, the advantage for the reward less its value.
 * Source: arXiv 2405.19107; verl dro. */
typedef struct tt_dro { float beta; } tt_dro;   /* 0 = 0.05 */

static inline void tt_loss_dro(const tt_loss_input *in, tt_token_loss *out) {
    double beta = tt_loss_default(in->user ? ((const tt_dro *)in->user)->beta : 0, (double)0.05f);
    out->loss = -in->advantage * in->logp + beta / 2 * in->log_ratio * in->log_ratio;
    out->dloss = -in->advantage + beta * in->log_ratio;
}

/* ---- DPPO bounds how far a probability moves, where PPO bounds its ratio ----
 * -sg(min(r, ratio_max)) A log p; 0 where A pushes p further away from where D > epsilon. D tells this token
 * (p now, q at the rollout) from all others: TV |p - q|, KL q log(q/p) + (1 - q) log((1 - q)/(1 - p)), 1e-8
 * inside as in verl.   Source: Qi et al. 2026, arXiv 2602.04879. */
typedef struct tt_dppo {
    int kl;                             /* 0: total variation, 1: KL                       */
    float epsilon_low, epsilon_high;    /* 0 = 0.15, with kl 0.05                          */
    float ratio_max;                    /* 0 = 20, negative = none                         */
} tt_dppo;

static inline void tt_loss_dppo(const tt_loss_input *in, tt_token_loss *out) {
    static const tt_dppo defaults = TT_INIT;
    const tt_dppo *c = in->user ? (const tt_dppo *)in->user : &defaults;
    double a = in->advantage, p = exp(in->logp), q = exp(in->old_logp);
    double epsilon = (double)(c->kl ? 0.05f : 0.15f);
    double low = tt_loss_default(c->epsilon_low, epsilon), high = tt_loss_default(c->epsilon_high, epsilon);
    double others = (1 - q) * log((1 - q + 1e-8) / (1 - p + 1e-8));
    double distance = c->kl ? q * (in->old_logp - in->logp) + others : fabs(p - q);
    double cap = c->ratio_max < 0 ? HUGE_VAL : tt_loss_default(c->ratio_max, 20), w;
    out->clipped_low = a <= 0 && in->logp < in->old_logp && distance > low;
    out->clipped_high = a > 0 && in->logp > in->old_logp && distance > high;
    if (out->clipped_low || out->clipped_high) { return; }
    out->clipped_dual = in->ratio > cap;
    w = in->ratio < cap ? in->ratio : cap;
    out->loss = -w * a * in->logp;
    out->dloss = -w * a;
}

/* ---- CLIP_COV and KL_COV ----
 * Entropy falls by the few tokens of large covariance (A - mean A)(log p - mean log p). CLIP_COV drops a
 * share of the tokens, drawn from those with a covariance inside (low, high) that PPO does not clip, and has
 * PPO's loss for all others. KL_COV has the loss -A r, and adds kl_coef |log r| for the share of largest
 * covariance, of equals the earlier; it has no slope where r = 1. Each chooses 1 token at least. Means and
 * shares are those of the student's tokens in the MICRO-batch, as in verl. The draw depends on seed,
 * prompt_id, sample and place in the response alone, not on the order of the batch. Source: The Entropy
 * Mechanism of RL, arXiv 2505.22617. */
typedef struct tt_covariance {
    int kl;                      /* 0: CLIP_COV, 1: KL_COV                                          */
    float ratio;                 /* share of the tokens; 0 = 2e-4                                   */
    float low, high;             /* CLIP_COV; both 0 = 1, 5                                         */
    float kl_coef;               /* KL_COV; 0 = 0.1 (paper: 1)                                      */
    uint64_t seed;
    double n_chosen, n_tokens;   /* filled: counts since the last zero                              */
    tt_context *ctx;             /* private: who chose, and for which tokens                        */
    unsigned char *chosen;
    size_t n;
} tt_covariance;

static inline void tt_covariance_free(tt_covariance *c) {
    if (c->chosen) { tt_free(c->ctx, c->chosen, c->n, 1); }
    c->chosen = NULL;
    c->n = 0;
}

/* PPO's loss under the same config, without a dual clip. */
static inline tt_grpo_config tt_covariance_ppo(const tt_grpo_config *config) {
    tt_grpo_config ppo = *config;
    ppo.token_loss = NULL;
    ppo.loss = TT_LOSS_PPO_CLIP;
    ppo.dual_clip = -1;
    return ppo;
}

/* A token that may be chosen: those of the least order are, of equals the earlier. */
typedef struct tt_covariance_token { size_t index; double a, logp, order; int clipped; } tt_covariance_token;

static inline int tt_covariance_order(const void *a, const void *b) {
    const tt_covariance_token *x = (const tt_covariance_token *)a, *y = (const tt_covariance_token *)b;
    if (x->order != y->order) { return x->order < y->order ? -1 : 1; }
    return (x->index > y->index) - (x->index < y->index);
}

/* The student's tokens of one response that are in the loss, in a random order; how many. */
static inline size_t tt_covariance_read(const tt_covariance *c, const tt_grpo_config *config,
                                        const tt_rollout *r, const float *logprobs, size_t index,
                                        tt_covariance_token *out) {
    uint64_t stream = tt_random(c->seed, r->prompt_id, (uint64_t)r->sample);
    size_t count = 0;
    int t;
    for (t = 0; t < r->response_length; t++) {
        double a = (double)(r->advantages ? r->advantages[t] : r->advantage);
        double logp = (double)logprobs[index + (size_t)t];
        double old_logp = r->old_logprobs ? (double)r->old_logprobs[t] : logp;
        uint64_t random = tt_random(c->seed, stream, (uint64_t)t);
        tt_token_loss loss;
        if (r->kind[r->prompt_length + t] != TT_KIND_STUDENT) { continue; }
        if (config->mask_truncated_completions && !r->stopped) { continue; }
        loss = tt_grpo_token_loss(config, logp, old_logp, (double)NAN, a, TT_KIND_STUDENT);
        out[count].index = index + (size_t)t;
        out[count].a = a;
        out[count].logp = logp;
        out[count].order = (double)(random >> 11) * (1.0 / 9007199254740992.0);
        out[count].clipped = loss.clipped_low || loss.clipped_high;
        count++;
    }
    return count;
}

/* Keeps those that may be chosen, of KL_COV all in the order of falling covariance; how many. */
static inline size_t tt_covariance_candidates(const tt_covariance *c, tt_covariance_token *x, size_t n) {
    int by_default = c->low == 0 && c->high == 0;
    double low = by_default ? 1 : (double)c->low, high = by_default ? 5 : (double)c->high;
    double mean_a = 0, mean_logp = 0;
    size_t count = 0, k;
    for (k = 0; k < n; k++) {
        mean_a += x[k].a;
        mean_logp += x[k].logp;
    }
    mean_a /= n > 0 ? (double)n : 1;
    mean_logp /= n > 0 ? (double)n : 1;
    for (k = 0; k < n; k++) {
        double covariance = (x[k].a - mean_a) * (x[k].logp - mean_logp);
        if (isnan(covariance)) { continue; }      /* of an infinite log-prob: the sort wants an order */
        if (c->kl) {
            x[k].order = -covariance;
        } else if (x[k].clipped || covariance <= low || covariance >= high) {
            continue;
        }
        x[count++] = x[k];
    }
    return count;
}

/* The i-th response of a micro-batch. */
static inline const tt_rollout *tt_covariance_rollout(const tt_loss_batch *batch, int i) {
    return &batch->rollouts->items[batch->indices ? batch->indices[i] : i];
}

/* Of the n tokens of a micro-batch. A float of 0.7 is a little less than 0.7, but 7 of 10 tokens. */
static inline void tt_covariance_choose(tt_covariance *c, tt_covariance_token *tokens, size_t n) {
    double ratio = tt_loss_default(c->ratio, (double)2e-4f) * (1 + 1.2e-7);
    size_t most = (size_t)(ratio * (double)n), count = tt_covariance_candidates(c, tokens, n), k;
    qsort(tokens, count, sizeof *tokens, tt_covariance_order);
    for (k = 0; k < count && k < (most > 1 ? most : 1); k++) { c->chosen[tokens[k].index] = 1; }
    c->n_chosen += (double)k;
    c->n_tokens += (double)n;
}

/* config.token_loss_begin: chooses the tokens of a micro-batch. */
static inline tt_status tt_covariance_begin(void *user, const tt_grpo_config *config,
                                            const tt_loss_batch *batch, const float *logprobs) {
    tt_covariance *c = (tt_covariance *)user;
    tt_context *ctx = batch->rollouts->ctx;
    int n = batch->indices ? batch->n : batch->rollouts->n, i;
    size_t total = 0, index = 0, n_tokens = 0;
    tt_covariance_token *tokens;
    tt_grpo_config ppo = tt_covariance_ppo(config);
    tt_covariance_free(c);
    for (i = 0; i < n; i++) { total += (size_t)tt_covariance_rollout(batch, i)->response_length; }
    c->ctx = ctx;
    c->n = total;
    c->chosen = (unsigned char *)tt_alloc(ctx, total, 1);
    tokens = (tt_covariance_token *)tt_alloc(ctx, total, sizeof *tokens);
    if (!c->chosen || !tokens) {
        tt_free(ctx, tokens, total, sizeof *tokens);
        return TT_ERR_MEM;
    }
    for (i = 0; i < n; i++) {
        const tt_rollout *r = tt_covariance_rollout(batch, i);
        n_tokens += tt_covariance_read(c, &ppo, r, logprobs, index, tokens + n_tokens);
        index += (size_t)r->response_length;
    }
    tt_covariance_choose(c, tokens, n_tokens);
    tt_free(ctx, tokens, total, sizeof *tokens);
    return TT_OK;
}

/* config.token_loss of both. A token that stands alone (tt_grpo_token_loss) is not chosen. */
static inline void tt_loss_covariance(const tt_loss_input *in, tt_token_loss *out) {
    const tt_covariance *c = (const tt_covariance *)in->user;
    int chosen = in->index < c->n && c->chosen[in->index];
    double coefficient = tt_loss_default(c->kl_coef, (double)0.1f), x = in->log_ratio;
    if (!c->kl && chosen) { return; }
    if (!c->kl) {
        tt_grpo_config ppo = tt_covariance_ppo(in->config);
        *out = tt_grpo_token_loss(&ppo, in->logp, in->old_logp, (double)NAN, in->advantage, TT_KIND_STUDENT);
        return;
    }
    out->loss = -in->advantage * in->ratio + (chosen ? coefficient * fabs(x) : 0);
    out->dloss = -in->advantage * in->dratio + (chosen ? coefficient * ((x > 0) - (x < 0)) : 0);
}

#endif
