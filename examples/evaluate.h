/* evaluate.h - how good is a model at a task of thinktuning.h: accuracy, pass@k, votes, with intervals
 *
 * The student alone answers held-out questions; what it did is counted and given as a struct, a table or
 * JSON. Include it behind thinktuning.h, in one file or in several: all of it is static, and what is not used
 * neither costs nor warns. It includes rewards.h (for the votes) and uses the public part of thinktuning.h;
 * private names begin with ttc_.
 *
 *     #include "thinktuning.h"
 *     #include "evaluate.h"
 *     tt_evaluate_desc desc = TT_INIT;                         (256 questions, one sample each)
 *     tt_evaluation e;
 *     if (tt_evaluate(model, tokenizer, &task, &desc, &e) == TT_OK) { printf("%g\n", e.accuracy); } */
#ifndef TT_EVALUATE_H
#define TT_EVALUATE_H
#include "rewards.h"

/* ---- statistics ---- */

typedef struct tt_interval { double low, high; } tt_interval;
/* Unbiased estimate of pass@k from n samples of which c are right: 1 - C(n - c, k) / C(n, k). 1 <= k <= n.
 * Source: Chen et al., arXiv 2107.03374, eq. 1. */
static inline double tt_pass_at_k(int n, int c, int k);
/* 95 % interval of a share: Wilson's, of `right` out of n independent trials. */
static inline tt_interval tt_wilson(double right, double n);
/* 95 % interval of a mean: percentiles of 2000 resamples with replacement, a function of values and seed. For
 * a paired comparison give the differences, question by question. */
static inline tt_status tt_bootstrap(tt_context *ctx, const double *values, int n, uint64_t seed,
                                     tt_interval *out);

/* ---- evaluation ---- */

#define TT_MAX_PASS 12
typedef struct tt_evaluation {
    int n;                                   /* responses */
    /* as in tt_rates: corrections and spoils are shares of the responses that made an attempt */
    double accuracy, attempt_rate, first_accuracy, reflection_rate, correction_rate, spoil_rate;
    double mean_length, stopped_rate, behaviour[TT_N_BEHAVIOURS];
    /* 95 %, bootstrap over questions */
    tt_interval accuracy_interval, attempt_interval, first_accuracy_interval, reflection_interval,
        correction_interval, spoil_interval, works_first_interval;
    int n_pass, k[TT_MAX_PASS];              /* k = 1, 2, 4, ... up to n_samples, and n_samples */
    double pass_at[TT_MAX_PASS];             /* unbiased, from all samples */
    double maj_at[TT_MAX_PASS];              /* right answer by vote of the first k samples; see
                                                tt_task.extract */
    tt_interval pass_interval[TT_MAX_PASS], maj_interval[TT_MAX_PASS];
    int n_questions, n_samples, n_errors;    /* n_errors: failed calls of the reward or judge: counted as
                                                wrong */
} tt_evaluation;

typedef struct tt_evaluate_desc {
    int n_questions, n_samples;    /* 0 = 256, 1 */
    int greedy, max_new_tokens, max_batch, split_train;
    float temperature;
    uint64_t seed;
    /* called for each response with its outcome; may be NULL */
    void (*on_response)(void *user, const char *question, const char *response, const tt_outcome *outcome);
    void *user;
    double *question_accuracy;     /* [n_questions] receives each question's share of right samples, for
                                      tt_bootstrap; NULL */
    tt_reducer *reducer;           /* its ranks share the questions: all of them call, and all get what one
                                      process would; on_response hears of the rank's own, which on rank 0 are
                                      the first. NULL = one process */
} tt_evaluate_desc;
static inline tt_status tt_evaluate(tt_model *model, const tt_tokenizer *tokenizer, const tt_task *task,
                                    const tt_evaluate_desc *desc, tt_evaluation *out);

/* One line of text per evaluation under a head, columns aligned; shares in percent with their intervals.
 * Appends to out. */
static inline tt_status tt_evaluation_table(const tt_evaluation *evaluations, const char *const *names, int n,
                                            tt_text *out);
/* One JSON object, no newline. */
static inline tt_status tt_evaluation_json(const tt_evaluation *evaluation, tt_text *out);

/* ==== statistics ============================================================================ */

/* C(n - c, k) / C(n, k) as a product: prod over i = n - c + 1 .. n of (1 - k / i). */
static inline double tt_pass_at_k(int n, int c, int k) {
    double none = 1;
    int i;
    if (n - c < k) { return 1; }
    for (i = n - c + 1; i <= n; i++) { none *= 1 - (double)k / i; }
    return 1 - none;
}

/* (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z the 97.5 % quantile of the normal
 * distribution. Without trials: all of 0..1. */
static inline tt_interval tt_wilson(double right, double n) {
    const double z = 1.959963984540054;
    tt_interval out = TT_INIT;
    double p, middle, half;
    out.high = 1;
    if (!(n > 0)) { return out; }
    p = right / n;
    middle = p + z * z / (2 * n);
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    out.low = (middle - half) / (1 + z * z / n);
    out.high = (middle + half) / (1 + z * z / n);
    return out;
}

/* ---- bootstrap: questions are drawn with replacement, as many as there are ---- */

/* A share is a ratio of sums over questions: above[q] / below[q], below NULL = 1. The number of what is below
 * (attempts that were wrong, say) varies between resamples, and so it should. */
typedef struct ttc_share { const double *above, *below; tt_interval *out; } ttc_share;

enum { TTC_RESAMPLES = 2000, TTC_MAX_SHARES = 7 + 2 * TT_MAX_PASS };
enum { TTC_STREAM_BOOTSTRAP = 0x73696772 };      /* of random numbers, see tt_random */

/* The middle 95 % of sorted values: the percentile method, interpolated between neighbours, as numpy does.
 * The value for p stands at p (n - 1). */
static tt_interval ttc_percentiles(const double *sorted, int n) {
    double at[2] = {0.025 * (n - 1), 0.975 * (n - 1)}, value[2];
    tt_interval out;
    int k;
    for (k = 0; k < 2; k++) {
        int i = (int)at[k];
        value[k] = i + 1 < n ? sorted[i] + (at[k] - i) * (sorted[i + 1] - sorted[i]) : sorted[i];
    }
    out.low = value[0];
    out.high = value[1];
    return out;
}

/* values[k] receives share k of one resample. */
static void ttc_resample(const ttc_share *shares, int n_shares, int n, tt_rng *rng, double *values) {
    double above[TTC_MAX_SHARES] = {0}, below[TTC_MAX_SHARES] = {0};
    int k, q;
    for (q = 0; q < n; q++) {
        int drawn = tt_rng_below(rng, n);
        for (k = 0; k < n_shares; k++) {
            above[k] += shares[k].above[drawn];
            below[k] += shares[k].below ? shares[k].below[drawn] : 1;
        }
    }
    for (k = 0; k < n_shares; k++) { values[k] = below[k] > 0 ? above[k] / below[k] : 0; }
}

/* Intervals of all shares over the same resamples of n questions. */
static tt_status ttc_intervals(tt_context *ctx, const ttc_share *shares, int n_shares, int n, uint64_t seed) {
    size_t size = (size_t)n_shares * TTC_RESAMPLES;
    double *all = (double *)tt_alloc(ctx, size, sizeof *all), values[TTC_MAX_SHARES];
    tt_rng rng;
    int b, k;
    if (!all) { return TT_ERR_MEM; }
    rng.seed = seed;
    rng.stream = TTC_STREAM_BOOTSTRAP;
    rng.index = 0;
    for (b = 0; b < TTC_RESAMPLES; b++) {
        ttc_resample(shares, n_shares, n, &rng, values);
        for (k = 0; k < n_shares; k++) { all[k * TTC_RESAMPLES + b] = values[k]; }
    }
    for (k = 0; k < n_shares; k++) {
        double *of_share = all + k * TTC_RESAMPLES;
        qsort(of_share, TTC_RESAMPLES, sizeof *of_share, ttc_by_value);
        *shares[k].out = ttc_percentiles(of_share, TTC_RESAMPLES);
    }
    tt_free(ctx, all, size, sizeof *all);
    return TT_OK;
}

static inline tt_status tt_bootstrap(tt_context *ctx, const double *values, int n, uint64_t seed,
                                     tt_interval *out) {
    ttc_share mean;
    memset(out, 0, sizeof *out);
    if (n < 1 || !values) {
        return tt_fail(ctx, TT_ERR_ARG, "tt_bootstrap: n is %d, expected >= 1 values", n);
    }
    mean.above = values;
    mean.below = NULL;
    mean.out = out;
    return ttc_intervals(ctx, &mean, 1, n, seed);
}

/* ==== evaluation ============================================================================
 * Each question has a row of sums over its samples, from which shares and their intervals come. Rows are kept
 * column by column: a column is what ttc_share wants. */
enum {
    TTC_SAMPLES, TTC_RIGHT, TTC_ATTEMPTS, TTC_FIRST_RIGHT, TTC_FIRST_WRONG, TTC_REFLECTS, TTC_CORRECTED,
    TTC_SPOILED, TTC_WORKS_FIRST,
    TTC_PASS,                                        /* one column for each k: pass@k of the question */
    TTC_MAJORITY = TTC_PASS + TT_MAX_PASS,           /* one for each k: is the vote of k samples right? */
    TTC_COLUMNS = TTC_MAJORITY + TT_MAX_PASS
};

typedef struct ttc_run {
    tt_context *ctx;
    const tt_tokenizer *tokenizer;
    const tt_task *task;
    tt_evaluate_desc desc;            /* resolved                                      */
    int end_token;
    int begin, end;                   /* the questions of this rank                    */
    double *columns;                  /* [TTC_COLUMNS, n_questions]                    */
    tt_text votes;                    /* answers of one question, each with a NUL      */
    size_t *vote_at;                  /* [n_samples] where they begin                  */
    unsigned char *right;             /* [n_samples] of that question                  */
    tt_text response;                 /* scratch                                       */
    tt_tally tally;
    tt_reward_errors errors;
    tt_evaluation *out;
} ttc_run;

static double *ttc_cell(const ttc_run *e, int column, int question) {
    return e->columns + (size_t)column * (size_t)e->desc.n_questions + question;
}

/* ---- one response ---- */

/* Its text, its reward and what it did: the functions that a trainer calls for a step, so that a measured
 * accuracy and a mean reward are of one kind. A response has stopped if its only
 * end token is its last one. */
static tt_status ttc_judge_response(ttc_run *e, const tt_prompts *p, const tt_completion *c,
                                    tt_reward_input *in, tt_outcome *o) {
    tt_reward of_task = TT_INIT;
    float reward = (float)NAN;
    int ends = 0, k;
    tt_status status;
    for (k = 0; k < c->length; k++) { ends += c->tokens[k] == e->end_token; }
    memset(in, 0, sizeof *in);
    in->sample = c->sample;
    in->tokens = c->tokens;
    in->n_tokens = c->length;
    in->stopped = ends == 1 && c->tokens[c->length - 1] == e->end_token;
    TTC_TRY(tt_prompts_input(p, c->request, &e->response, in));
    in->prompt = e->begin + c->request;
    of_task.name = e->task->name;
    of_task.reward = e->task->reward;
    of_task.user = e->task->user;
    TTC_TRY(tt_reward_call(e->ctx, &of_task, in, &e->errors, &reward));
    TTC_TRY(tt_judge(e->ctx, e->task, in, reward, &e->errors, o));
done:
    return status;
}

/* The answer in normal form, for ttc_majority_right. */
static tt_status ttc_add_vote(ttc_run *e, const tt_reward_input *in) {
    const tt_task *task = e->task;
    tt_status status;
    e->vote_at[in->sample] = e->votes.size;
    status =
        task->extract ? task->extract(task->user, in, &e->votes) : tt_extract_answer(NULL, in, &e->votes);
    return status == TT_OK ? tt_text_append(&e->votes, "", 1) : status;
}

/* Counts a response in the row of its question. */
static tt_status ttc_add_response(ttc_run *e, const tt_prompts *p, const tt_completion *c) {
    tt_reward_input in;
    tt_outcome o;
    int q = e->begin + c->request;
    tt_status status;
    TTC_TRY(ttc_judge_response(e, p, c, &in, &o));
    TTC_TRY(ttc_add_vote(e, &in));
    e->right[c->sample] = (unsigned char)o.final_right;
    tt_tally_add(&e->tally, &o, c->length, in.stopped);
    *ttc_cell(e, TTC_SAMPLES, q) += 1;
    *ttc_cell(e, TTC_RIGHT, q) += o.final_right;
    *ttc_cell(e, TTC_ATTEMPTS, q) += o.attempted;
    *ttc_cell(e, TTC_FIRST_RIGHT, q) += o.first_right;
    *ttc_cell(e, TTC_FIRST_WRONG, q) += o.attempted && !o.first_right;
    *ttc_cell(e, TTC_REFLECTS, q) += o.reflects;
    *ttc_cell(e, TTC_CORRECTED, q) += o.attempted && o.final_right && !o.first_right;
    *ttc_cell(e, TTC_SPOILED, q) += o.first_right && !o.final_right;
    *ttc_cell(e, TTC_WORKS_FIRST, q) += o.behaviour == TT_WORKS_FIRST;
    if (e->desc.on_response) { e->desc.on_response(e->desc.user, in.question, in.response, &o); }
done:
    return status;
}

/* ---- all samples of a question, in order ---- */

static int ttc_same_vote(const ttc_run *e, int i, int j) {
    return strcmp(e->votes.data + e->vote_at[i], e->votes.data + e->vote_at[j]) == 0;
}

/* The answer that most of the first k samples give, the earliest on a tie, is right if one of those who gave
 * it was right; no answer never wins. */
static int ttc_majority_right(const ttc_run *e, int k) {
    int best = -1, best_votes = 0, i, j;
    for (i = 0; i < k; i++) {
        int votes = 0, answered = e->votes.data[e->vote_at[i]] != 0;
        for (j = 0; j < k && answered; j++) { votes += ttc_same_vote(e, i, j); }
        if (votes > best_votes) {
            best = i;
            best_votes = votes;
        }
    }
    for (i = 0; i < k && best >= 0; i++) {
        if (e->right[i] && ttc_same_vote(e, best, i)) { return 1; }
    }
    return 0;
}

/* Completions come question by question, samples in order: after the last sample of a question its pass@k and
 * votes are known, and the votes' memory is the next one's. */
static tt_status ttc_add_responses(ttc_run *e, const tt_prompts *p, const tt_completions *completions) {
    int i, k, n = e->desc.n_samples;
    for (i = 0; i < completions->n; i++) {
        const tt_completion *c = &completions->items[i];
        int q = e->begin + c->request;
        tt_status status;
        if (c->sample == 0) { e->votes.size = 0; }
        status = ttc_add_response(e, p, c);
        if (status != TT_OK) { return status; }
        for (k = 0; k < e->out->n_pass && c->sample + 1 == n; k++) {
            *ttc_cell(e, TTC_PASS + k, q) = tt_pass_at_k(n, (int)*ttc_cell(e, TTC_RIGHT, q), e->out->k[k]);
            *ttc_cell(e, TTC_MAJORITY + k, q) = ttc_majority_right(e, e->out->k[k]);
        }
    }
    return TT_OK;
}

/* Request q has id q, whatever rank asks: samples are a function of (seed, id), so
 * that ranks change nothing. */
static tt_status ttc_sample(ttc_run *e, tt_model *model) {
    const tt_evaluate_desc *d = &e->desc;
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_prompts p = TT_INIT;
    int n = e->end - e->begin, i;
    tt_status status;
    sampling.max_new_tokens = d->max_new_tokens;
    sampling.greedy = d->greedy;
    sampling.temperature = d->temperature;
    sampling.seed = d->seed;
    sampling.stop_tokens = &e->end_token;
    sampling.n_stop_tokens = 1;
    sampling.max_batch = d->max_batch;
    TTC_TRY(tt_prompts_create(e->ctx, e->task, e->tokenizer, n, &p));
    for (i = 0; i < n; i++) {
        TTC_TRY(tt_prompts_set(&p, i, !d->split_train, (uint64_t)(e->begin + i)));
        p.requests[i].id = (uint64_t)(e->begin + i);
        p.requests[i].n = d->n_samples;
    }
    TTC_TRY(tt_generate(model, p.requests, n, &sampling, &completions));
    TTC_TRY(ttc_add_responses(e, &p, &completions));
done:
    tt_completions_free(&completions);
    tt_prompts_free(&p);
    return status;
}

/* ---- several processes ---- */

/* Rank r of R has questions n r / R up to n (r + 1) / R. */
static void ttc_take_share(ttc_run *e) {
    const tt_reducer_desc *d = e->desc.reducer ? tt_reducer_desc_get(e->desc.reducer) : NULL;
    e->begin = d ? (int)((int64_t)e->desc.n_questions * d->rank / d->world_size) : 0;
    e->end = d ? (int)((int64_t)e->desc.n_questions * (d->rank + 1) / d->world_size) : e->desc.n_questions;
}

/* Adds what the other ranks found: columns, tally and errors as one row of doubles. Each question is one
 * rank's own, so that sums are copies; the tally is of whole numbers. */
static tt_status ttc_add_ranks(ttc_run *e) {
    enum { N_TALLY = sizeof(tt_tally) / sizeof(double) };
    tt_reducer *r = e->desc.reducer;
    size_t cells = (size_t)TTC_COLUMNS * (size_t)e->desc.n_questions, n = cells + N_TALLY + 1, i, k;
    size_t ranks = (size_t)tt_reducer_desc_get(r)->world_size;
    double *mine = (double *)tt_alloc(e->ctx, n * (ranks + 1), sizeof *mine), *all = mine + n;
    tt_status status;
    if (!mine) { return TT_ERR_MEM; }
    memcpy(mine, e->columns, cells * sizeof *mine);
    memcpy(mine + cells, &e->tally, sizeof e->tally);
    mine[n - 1] = e->errors.n;
    TTC_TRY(tt_reducer_gather(r, mine, (int)n, all));
    memset(mine, 0, n * sizeof *mine);
    for (k = 0; k < ranks; k++) {
        for (i = 0; i < n; i++) { mine[i] += all[k * n + i]; }
    }
    memcpy(e->columns, mine, cells * sizeof *mine);
    memcpy(&e->tally, mine + cells, sizeof e->tally);
    e->errors.n = (int)mine[n - 1];
done:
    tt_free(e->ctx, mine, n * (ranks + 1), sizeof *mine);
    return status;
}

/* ---- the whole ---- */

/* The rates over all responses, by tt_tally_rates. */
static void ttc_write_rates(const ttc_run *e) {
    tt_evaluation *o = e->out;
    tt_rates rates = tt_tally_rates(&e->tally);
    int q;
    o->n = (int)e->tally.n;
    o->accuracy = rates.accuracy;
    o->attempt_rate = rates.attempt_rate;
    o->first_accuracy = rates.first_accuracy;
    o->reflection_rate = rates.reflection_rate;
    o->correction_rate = rates.correction_rate;
    o->spoil_rate = rates.spoil_rate;
    o->mean_length = rates.mean_length;
    o->stopped_rate = rates.stopped_rate;
    memcpy(o->behaviour, rates.behaviour, sizeof o->behaviour);
    o->n_errors = e->errors.n;
    for (q = 0; q < e->desc.n_questions && e->desc.question_accuracy; q++) {
        e->desc.question_accuracy[q] = *ttc_cell(e, TTC_RIGHT, q) / e->desc.n_samples;
    }
}

/* Column above over column below, or over the number of questions if below is -1. */
static ttc_share ttc_share_of(const ttc_run *e, int above, int below, tt_interval *out) {
    ttc_share s;
    s.above = ttc_cell(e, above, 0);
    s.below = below >= 0 ? ttc_cell(e, below, 0) : NULL;
    s.out = out;
    return s;
}

/* Means of pass@k and of the votes, and the intervals of all shares. */
static tt_status ttc_write_intervals(const ttc_run *e) {
    tt_evaluation *o = e->out;
    ttc_share shares[TTC_MAX_SHARES];
    int n = e->desc.n_questions, count = 0, k, q;
    shares[count++] = ttc_share_of(e, TTC_RIGHT, TTC_SAMPLES, &o->accuracy_interval);
    shares[count++] = ttc_share_of(e, TTC_ATTEMPTS, TTC_SAMPLES, &o->attempt_interval);
    shares[count++] = ttc_share_of(e, TTC_FIRST_RIGHT, TTC_SAMPLES, &o->first_accuracy_interval);
    shares[count++] = ttc_share_of(e, TTC_REFLECTS, TTC_SAMPLES, &o->reflection_interval);
    shares[count++] = ttc_share_of(e, TTC_CORRECTED, TTC_FIRST_WRONG, &o->correction_interval);
    shares[count++] = ttc_share_of(e, TTC_SPOILED, TTC_FIRST_RIGHT, &o->spoil_interval);
    shares[count++] = ttc_share_of(e, TTC_WORKS_FIRST, TTC_SAMPLES, &o->works_first_interval);
    for (k = 0; k < o->n_pass; k++) {
        for (q = 0; q < n; q++) {
            o->pass_at[k] += *ttc_cell(e, TTC_PASS + k, q) / n;
            o->maj_at[k] += *ttc_cell(e, TTC_MAJORITY + k, q) / n;
        }
        shares[count++] = ttc_share_of(e, TTC_PASS + k, -1, &o->pass_interval[k]);
        shares[count++] = ttc_share_of(e, TTC_MAJORITY + k, -1, &o->maj_interval[k]);
    }
    return ttc_intervals(e->ctx, shares, count, n, e->desc.seed);
}

/* The description with its defaults, and the k of pass@k. */
static tt_status ttc_run_begin(ttc_run *e, const tt_evaluate_desc *desc) {
    tt_evaluation *o = e->out;
    int k;
    if (desc) { e->desc = *desc; }
    if (e->desc.n_questions == 0) { e->desc.n_questions = 256; }
    if (e->desc.n_samples == 0) { e->desc.n_samples = 1; }
    if (e->desc.n_questions < 1 || e->desc.n_samples < 1) {
        return tt_fail(e->ctx, TT_ERR_ARG, "tt_evaluate: n_questions is %d and n_samples %d, expected >= 1",
                       e->desc.n_questions, e->desc.n_samples);
    }
    o->n_questions = e->desc.n_questions;
    o->n_samples = e->desc.n_samples;
    for (k = 1; k < e->desc.n_samples && o->n_pass < TT_MAX_PASS - 1; k *= 2) { o->k[o->n_pass++] = k; }
    o->k[o->n_pass++] = e->desc.n_samples;
    ttc_take_share(e);
    e->votes.ctx = e->response.ctx = e->ctx;
    return TT_OK;
}

static inline tt_status tt_evaluate(tt_model *model, const tt_tokenizer *tokenizer, const tt_task *task,
                                    const tt_evaluate_desc *desc, tt_evaluation *out) {
    ttc_run e;
    size_t cells, samples;
    tt_status status;
    memset(&e, 0, sizeof e);
    memset(out, 0, sizeof *out);
    if (!model) { return TT_ERR_ARG; }
    status = tt_task_check(model, tokenizer, task, "tt_evaluate", &e.end_token);
    if (status != TT_OK) { return status; }
    e.ctx = tt_model_context(model);
    e.tokenizer = tokenizer;
    e.task = task;
    e.out = out;
    status = ttc_run_begin(&e, desc);
    if (status != TT_OK) { return status; }
    cells = (size_t)TTC_COLUMNS * (size_t)e.desc.n_questions;
    samples = (size_t)e.desc.n_samples;
    e.columns = (double *)tt_alloc(e.ctx, cells, sizeof *e.columns);
    e.vote_at = (size_t *)tt_alloc(e.ctx, samples, sizeof *e.vote_at);
    e.right = (unsigned char *)tt_alloc(e.ctx, samples, 1);
    TTC_TRY(e.columns && e.vote_at && e.right ? TT_OK : TT_ERR_MEM);
    if (e.end > e.begin) { TTC_TRY(ttc_sample(&e, model)); }
    if (e.desc.reducer) { TTC_TRY(ttc_add_ranks(&e)); }
    ttc_write_rates(&e);
    TTC_TRY(ttc_write_intervals(&e));
done:
    tt_free(e.ctx, e.columns, cells, sizeof *e.columns);
    tt_free(e.ctx, e.vote_at, samples, sizeof *e.vote_at);
    tt_free(e.ctx, e.right, samples, 1);
    tt_text_free(&e.votes);
    tt_text_free(&e.response);
    return status;
}

/* ==== evaluations as text =================================================================== */

enum { TTC_CELL = 19 };      /* columns of "100.0 [100.0, 100.0]" and one to spare */

/* "31.1 [28.0, 34.0]", filled up with blanks. */
static tt_status ttc_table_cell(tt_text *out, double value, tt_interval i) {
    size_t begin = out->size;
    tt_status status = tt_text_format(out, "  %.1f [%.1f, %.1f]", 100 * value, 100 * i.low, 100 * i.high);
    int blanks = 2 + TTC_CELL - (int)(out->size - begin);
    return status == TT_OK && blanks > 0 ? tt_text_format(out, "%*s", blanks, "") : status;
}

/* pass@k and maj@k of the largest k are shown; all of them are in the JSON. */
static tt_status ttc_table_row(tt_text *out, const tt_evaluation *e, const char *name, int width) {
    int last = e->n_pass > 0 ? e->n_pass - 1 : 0;
    tt_status status;
    TTC_TRY(tt_text_format(out, "%-*s  %9d  %3d", width, name, e->n_questions, e->k[last]));
    TTC_TRY(ttc_table_cell(out, e->accuracy, e->accuracy_interval));
    TTC_TRY(ttc_table_cell(out, e->attempt_rate, e->attempt_interval));
    TTC_TRY(ttc_table_cell(out, e->first_accuracy, e->first_accuracy_interval));
    TTC_TRY(ttc_table_cell(out, e->pass_at[last], e->pass_interval[last]));
    TTC_TRY(ttc_table_cell(out, e->maj_at[last], e->maj_interval[last]));
    TTC_TRY(ttc_table_cell(out, e->reflection_rate, e->reflection_interval));
    TTC_TRY(ttc_table_cell(out, e->correction_rate, e->correction_interval));
    TTC_TRY(ttc_table_cell(out, e->spoil_rate, e->spoil_interval));
    TTC_TRY(ttc_table_cell(out, e->behaviour[TT_WORKS_FIRST], e->works_first_interval));
    TTC_TRY(tt_text_format(out, "  %8.1f\n", e->mean_length));
done:
    return status;
}

static inline tt_status tt_evaluation_table(const tt_evaluation *evaluations, const char *const *names, int n,
                                            tt_text *out) {
    static const char *const heads[] = {
        "accuracy %", "attempts %", "first try %", "pass@k %", "maj@k %", "reflects %", "corrects %",
        "spoils %", "works first %"
    };
    int width = 4, i;
    size_t k;
    tt_status status;
    for (i = 0; i < n; i++) {
        if ((int)strlen(names[i]) > width) { width = (int)strlen(names[i]); }
    }
    TTC_TRY(tt_text_format(out, "%-*s  %9s  %3s", width, "", "questions", "k"));
    for (k = 0; k < TTC_COUNT(heads); k++) {
        TTC_TRY(tt_text_format(out, "  %-*s", (int)TTC_CELL, heads[k]));
    }
    TTC_TRY(tt_text_format(out, "  %8s\n", "tokens"));
    for (i = 0; i < n; i++) { TTC_TRY(ttc_table_row(out, &evaluations[i], names[i], width)); }
done:
    return status;
}

/* ,"accuracy":0.311,"accuracy/low":0.28,"accuracy/high":0.34 */
static tt_status ttc_json_share(tt_text *out, const char *name, double value, tt_interval i) {
    return tt_text_format(out, ",\"%s\":%r,\"%s/low\":%r,\"%s/high\":%r", name, value, name, i.low, name,
                          i.high);
}

/* ,"pass@4":...,"maj@4":... with their intervals */
static tt_status ttc_json_pass(tt_text *out, const tt_evaluation *e, int k) {
    char name[32];
    tt_status status;
    snprintf(name, sizeof name, "pass@%d", e->k[k]);
    status = ttc_json_share(out, name, e->pass_at[k], e->pass_interval[k]);
    if (status != TT_OK) { return status; }
    snprintf(name, sizeof name, "maj@%d", e->k[k]);
    return ttc_json_share(out, name, e->maj_at[k], e->maj_interval[k]);
}

/* Names with a slash are intervals; numbers read back as the same doubles. */
static inline tt_status tt_evaluation_json(const tt_evaluation *e, tt_text *out) {
    static const char *const behaviours[TT_N_BEHAVIOURS] = {
        "no_reflection", "self_agreement", "self_conflict", "self_consultation", "self_critique",
        "works_first"
    };
    int k;
    tt_status status;
    TTC_TRY(tt_text_format(out, "{\"n_questions\":%d,\"n_samples\":%d,\"n_errors\":%d", e->n_questions,
                           e->n_samples, e->n_errors));
    TTC_TRY(ttc_json_share(out, "accuracy", e->accuracy, e->accuracy_interval));
    TTC_TRY(ttc_json_share(out, "attempt_rate", e->attempt_rate, e->attempt_interval));
    TTC_TRY(ttc_json_share(out, "first_accuracy", e->first_accuracy, e->first_accuracy_interval));
    TTC_TRY(ttc_json_share(out, "reflection_rate", e->reflection_rate, e->reflection_interval));
    TTC_TRY(ttc_json_share(out, "correction_rate", e->correction_rate, e->correction_interval));
    TTC_TRY(ttc_json_share(out, "spoil_rate", e->spoil_rate, e->spoil_interval));
    for (k = 0; k < TT_N_BEHAVIOURS; k++) {
        TTC_TRY(tt_text_format(out, ",\"%s\":%r", behaviours[k], e->behaviour[k]));
    }
    for (k = 0; k < e->n_pass; k++) { TTC_TRY(ttc_json_pass(out, e, k)); }
    TTC_TRY(tt_text_format(out, ",\"mean_length\":%r,\"stopped_rate\":%r}", e->mean_length, e->stopped_rate));
done:
    return status;
}

#endif
