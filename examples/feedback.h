/* feedback.h - learning from feedback beyond ThinkTuning: each method is a row of settings for the trainer
 *
 *     tt_feedback_setup setup = TT_INIT;             (zeros are the defaults: TRL's, or the authors')
 *     setup.teacher_model = moving_average;          (what a method wants; an error names what is missing)
 *     status = tt_feedback_apply(ctx, "sdpo", &setup, &desc);      (then tt_trainer_create(ctx, &desc))
 *
 * x is the question, y0 the student's response, f feedback on it, y1 an answer given after reading f. l = log
 * p(token | x, before it) now, o the same at the rollout, q that of the same token under a teacher that reads
 * more than x. What all methods share is in the header: an advantage for each token (tt_rollout_advantages),
 * scoring behind another context and by another model (tt_rollouts_logprobs), and refinement
 * (tt_think_config.refine). So none of them has a path of its own through sampler or model.
 *
 * Include it behind thinktuning.h; it uses the public API alone. */
#ifndef TT_FEEDBACK_H
#define TT_FEEDBACK_H

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What the teacher of a row's q reads beside x. */
typedef enum tt_feedback_reads { TT_READS_NOTHING = 0, TT_READS_ATTEMPTS, TT_READS_GOLD } tt_feedback_reads;

typedef struct tt_feedback_method {
    const char *name, *formula, *source;
    int teacher, scores;               /* 1: wants desc.teacher, setup.teacher_model                    */
    int refines;                       /* 1: y1 joins the group; 2: and y0 has no loss, if setup says so */
    int routes;                        /* 1: a wrong response with feedback has q, all others GRPO      */
    tt_feedback_reads reads;
    tt_advantage_type advantage;
    tt_scale_rewards scale;
    tt_token_loss_fn token_loss, off_policy_loss;
} tt_feedback_method;

typedef struct tt_feedback_setup {
    tt_model *teacher_model;           /* whose q it is. A moving average: tt_teacher_follow after each step,
                                        * decay 1 - teacher_update_rate, TRL 0.95                      */
    const char *refine;                /* NULL = the task's prompt around TT_REFINE_TEMPLATE            */
    const char *reprompt_template;     /* NULL = TRL's, see below; the task's prompt is around it       */
    const char *solution_template, *feedback_template;
    float success_reward_threshold;    /* from which reward on a response is right; 0 = 1               */
    int reprompt_on_self_success;      /* 1: a right response is its own sibling too; TRL: 0            */
    int feedback_only_without_solution;
    float distillation_is_clip;        /* c; 0 = 2, negative = none                                     */
    float distillation_weight;         /* lambda: (1 - lambda) GRPO + lambda SDPO; 0 = 1. Below 1 both are
                                        * averaged over all responses, as grpo.aggregation says; at 1 a
                                        * response without q leaves it. TT_SEQ_MEAN_TOKEN_MEAN is TRL's
                                        * loss_type grpo; by its default, dapo, TRL averages GRPO over
                                        * tokens, but SDPO still over responses                        */
    float gamma;                       /* opd: MiniLLM's sum of later terms; 0 = the token alone        */
    int refined_only;                  /* rltf_sd: 1 = y0 has no loss                                   */
    /* filled, counts since the last zero; of several processes each has its own responses' */
    double n_scored, n_no_context, n_too_long, teacher_tokens;
    /* private */
    const tt_feedback_method *method;
    const tt_teacher *teacher;
    tt_grpo_config grpo;
    tt_model *student;
    const char *separator;             /* of desc.think: between reason and phrase                       */
    char text[2048];
} tt_feedback_setup;

#define TT_REFINE_TEMPLATE \
    "{question}\n\nAn answer:\n{response}\n\nFeedback on it:\n{reason}\n{phrase}\n\nAnswer anew."
#define TT_REPROMPT_TEMPLATE "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n"
#define TT_SOLUTION_TEMPLATE "\nCorrect solution:\n\n{successful_previous_attempt}\n\n"
#define TT_FEEDBACK_TEMPLATE \
    "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}\n\n"

static inline double tt_feedback_default(float value, double zero) {
    return value != 0 ? (double)value : zero;
}

/* ---- losses ---- */

/* SDPO: sg(l - q) l min(exp(sg(l - o)), c), which is REINFORCE with A_t = q - l. A token's advantage is
 * q - o, so that q - l is known after an update too. A response without q has the policy loss.
 * Source: Huebotter et al. 2026, arXiv 2601.20802; TRL sdpo (distillation_mode sampled_token). */
static inline void tt_loss_sdpo(const tt_loss_input *in, tt_token_loss *out) {
    static const tt_feedback_setup defaults = TT_INIT;
    const tt_feedback_setup *s = in->user ? (const tt_feedback_setup *)in->user : &defaults;
    int own = !in->rollout || in->rollout->advantages;
    double weight = tt_feedback_default(s->distillation_weight, 1);
    double c = s->distillation_is_clip < 0 ? HUGE_VAL : tt_feedback_default(s->distillation_is_clip, 2);
    double a = in->advantage - in->log_ratio, w = in->ratio < c ? in->ratio : c;
    double policy = own || !s->method || !s->method->routes ? 1 - weight : 1;
    if (policy > 0 && in->rollout) {
        tt_grpo_config ppo = *in->config;
        ppo.token_loss = NULL;
        *out = tt_grpo_token_loss(&ppo, in->logp, in->old_logp, (double)NAN, (double)in->rollout->advantage,
                                  TT_KIND_STUDENT);
        out->loss *= policy;
        out->dloss *= policy;
    }
    if (!own) { return; }
    out->loss -= weight * a * w * in->logp;
    out->dloss -= weight * a * w;
}

/* RLTF-SD: -A0 l of y1 under x alone; no ratio. Source: arXiv 2602.02482. */
static inline void tt_loss_rltf(const tt_loss_input *in, tt_token_loss *out) {
    out->loss = -in->advantage * in->logp;
    out->dloss = -in->advantage;
}

/* ---- the methods ----
 * thinktuning    feedback is appended, [tt:think.augment]; the config as it is
 * critique_grpo  A = R - mean over y0 and y1; y0: PPO, y1: -A p / (p + 0.1)
 * rltf_sd        A0 = R(y1) - mean of R(y0), the mean of the first turn alone: with that of the second the
 *                gradient died wherever feedback always helps. TT_ADV_LUFFY has this baseline
 * sdpo           q: the moving average reads x + a right sibling's response + f; what has neither, no loss
 * opsd           as sdpo, q: the frozen base reads x + the gold answer
 * opd            A_t = q - o, q: another model under x alone
 * srpo           wrong with feedback: sdpo; all others: GRPO */
static const tt_feedback_method tt_feedback_methods[] = {
    {"thinktuning", "feedback appended, advantage-aware shaping", "arXiv 2508.07616", 1, 0, 0, 0,
     TT_READS_NOTHING, TT_ADV_GRPO, TT_SCALE_GROUP, NULL, NULL},
    {"critique_grpo", "y0: PPO, y1: -A p / (p + 0.1), A = R - mean of all", "arXiv 2506.03106", 1, 0, 1, 0,
     TT_READS_NOTHING, TT_ADV_GRPO, TT_SCALE_NONE, NULL, NULL},
    {"rltf_sd", "y1: -(R(y1) - mean R(y0)) log p", "arXiv 2602.02482", 1, 0, 2, 0,
     TT_READS_NOTHING, TT_ADV_LUFFY, TT_SCALE_NONE, NULL, tt_loss_rltf},
    {"sdpo", "sg(l - q) l min(r, c), q reads a right sibling, feedback", "arXiv 2601.20802; TRL sdpo", 0, 1,
     0, 0, TT_READS_ATTEMPTS, TT_ADV_GRPO, TT_SCALE_GROUP, tt_loss_sdpo, NULL},
    {"opsd", "sdpo, q reads the gold answer", "arXiv 2601.18734, 2602.12275", 0, 1, 0, 0,
     TT_READS_GOLD, TT_ADV_GRPO, TT_SCALE_GROUP, tt_loss_sdpo, NULL},
    {"opd", "PPO with A_t = q - o, q of another model", "MiniLLM, arXiv 2306.08543; verl", 0, 1, 0, 0,
     TT_READS_NOTHING, TT_ADV_GRPO, TT_SCALE_GROUP, NULL, NULL},
    {"srpo", "wrong with feedback: sdpo, others: grpo", "arXiv 2604.02288", 1, 1, 0, 1,
     TT_READS_ATTEMPTS, TT_ADV_GRPO, TT_SCALE_GROUP, tt_loss_sdpo, NULL}
};
enum { TT_N_FEEDBACK_METHODS = (int)(sizeof tt_feedback_methods / sizeof *tt_feedback_methods) };

/* NULL, and an error that lists the known ones, if there is no such method. */
static inline const tt_feedback_method *tt_feedback_method_find(tt_context *ctx, const char *name) {
    char known[256] = "";
    int i;
    for (i = 0; i < TT_N_FEEDBACK_METHODS; i++) {
        size_t size = strlen(known);
        if (strcmp(tt_feedback_methods[i].name, name) == 0) { return &tt_feedback_methods[i]; }
        snprintf(known + size, sizeof known - size, "%s%s", i ? ", " : "", tt_feedback_methods[i].name);
    }
    tt_fail(ctx, TT_ERR_ARG, "feedback: method is \"%.64s\", expected one of %s", name, known);
    return NULL;
}

/* ---- what the teacher of q reads ---- */

/* Appends pattern with {name} replaced by value, for each of n names. */
static inline tt_status tt_feedback_fill(tt_text *out, const char *pattern, const char *const *names,
                                         const char *const *values, int n) {
    tt_status status = TT_OK;
    while (*pattern && status == TT_OK) {
        int k = 0;
        while (k < n && strncmp(pattern, names[k], strlen(names[k])) != 0) { k++; }
        status = k < n ? tt_text_append(out, values[k], strlen(values[k])) : tt_text_append(out, pattern, 1);
        pattern += k < n ? strlen(names[k]) : 1;
    }
    return status;
}

static inline int tt_feedback_is_right(const tt_feedback_setup *s, const tt_rollout *r) {
    return (double)r->reward >= tt_feedback_default(s->success_reward_threshold, 1);
}

static inline int tt_feedback_is_own(const tt_rollout *r) { return !r->off_policy && !r->guided; }

/* The first right response of the group, but for the one itself; NULL = there is none. */
static inline const tt_rollout *tt_feedback_sibling(const tt_feedback_setup *s, const tt_rollouts *all,
                                                    int i) {
    int size = all->num_generations, first = i / size * size, j;
    for (j = first; j < first + size; j++) {
        if (j == i && !s->reprompt_on_self_success) { continue; }
        if (tt_feedback_is_right(s, &all->items[j])) { return &all->items[j]; }
    }
    return NULL;
}

/* A response as text, with a NUL, without its end token. */
static inline tt_status tt_feedback_decode(const tt_tokenizer *tokenizer, const tt_rollout *r, tt_text *out) {
    int n = r->response_length - (r->stopped ? 1 : 0);
    tt_status status;
    out->size = 0;
    status = tt_decode(tokenizer, r->tokens + r->prompt_length, (size_t)n, 0, out);
    return status == TT_OK ? tt_text_append(out, "", 1) : status;
}

/* Feedback on the wrong of n responses; that on response i begins at said[at[i]] and ends with a NUL. */
typedef struct tt_feedback_texts {
    tt_text said, attempts;
    size_t *at;                        /* [2 n]; at[n + k]: where attempt k begins in attempts          */
    tt_attempt *asked;
    tt_feedback *out;
} tt_feedback_texts;

static inline void tt_feedback_texts_free(tt_feedback_texts *t, const tt_rollouts *all) {
    size_t n = (size_t)all->n;
    int i;
    for (i = 0; t->out && i < all->n; i++) {
        tt_text *const parts[3] = {&t->out[i].reason, &t->out[i].phrase, &t->out[i].opinion};
        int k;
        for (k = 0; k < 3; k++) {
            if (parts[k]->capacity > 0) { tt_text_free(parts[k]); }
        }
    }
    tt_free(all->ctx, t->at, 2 * n, sizeof *t->at);
    tt_free(all->ctx, t->asked, n, sizeof *t->asked);
    tt_free(all->ctx, t->out, n, sizeof *t->out);
    tt_text_free(&t->said);
    tt_text_free(&t->attempts);
}

/* One call of the teacher for all of them. */
static inline tt_status tt_feedback_ask(tt_feedback_setup *s, const tt_prompts *prompts, tt_rollouts *all,
                                        tt_feedback_texts *t) {
    size_t n = (size_t)all->n;
    tt_text text = TT_INIT;
    tt_status status = TT_ERR_MEM;
    int i, k = 0;
    text.ctx = t->said.ctx = t->attempts.ctx = all->ctx;
    t->at = (size_t *)tt_alloc(all->ctx, 2 * n, sizeof *t->at);
    t->asked = (tt_attempt *)tt_alloc(all->ctx, n, sizeof *t->asked);
    t->out = (tt_feedback *)tt_alloc(all->ctx, n, sizeof *t->out);
    /* at 0: no feedback */
    if (t->at && t->asked && t->out) { status = tt_text_append(&t->said, "", 1); }
    for (i = 0; i < all->n && status == TT_OK && s->teacher; i++) {
        const tt_rollout *r = &all->items[i];
        if (!tt_feedback_is_own(r) || tt_feedback_is_right(s, r) || !r->stopped) { continue; }
        if (s->feedback_only_without_solution && tt_feedback_sibling(s, all, i)) { continue; }
        status = tt_feedback_decode(prompts->tokenizer, r, &text);
        t->at[n + (size_t)k] = t->attempts.size;
        t->asked[k].response_size = text.size - 1;
        t->asked[k++].rollout = i;
        if (status == TT_OK) { status = tt_text_append(&t->attempts, text.data, text.size); }
    }
    for (i = 0; i < k && status == TT_OK; i++) {
        tt_attempt *a = &t->asked[i];
        a->response = t->attempts.data + t->at[n + (size_t)i];
        a->question = tt_prompts_question(prompts, all->items[a->rollout].group);
        a->question_size = strlen(a->question);
        t->out[i].reason.ctx = t->out[i].phrase.ctx = t->out[i].opinion.ctx = all->ctx;
    }
    if (status == TT_OK && k > 0) { status = s->teacher->feedback(s->teacher->user, t->asked, k, t->out); }
    for (i = 0; i < k && status == TT_OK; i++) {
        const tt_feedback *f = &t->out[i];
        const char *reason = f->reason.data ? f->reason.data : "";
        const char *phrase = f->phrase.data ? f->phrase.data : "";
        s->teacher_tokens += f->n_tokens;
        if (f->reason.size + f->phrase.size == 0) { continue; }
        t->at[t->asked[i].rollout] = t->said.size;
        status = tt_text_append(&t->said, reason, f->reason.size);
        if (status == TT_OK) { status = tt_text_append(&t->said, s->separator, strlen(s->separator)); }
        if (status == TT_OK) { status = tt_text_append(&t->said, phrase, f->phrase.size); }
        if (status == TT_OK) { status = tt_text_append(&t->said, "", 1); }
    }
    tt_text_free(&text);
    return status;
}

/* value within its template, with a NUL; nothing for an empty value. */
static inline tt_status tt_feedback_part(tt_text *out, const char *pattern, const char *name,
                                         const char *value) {
    tt_status status = *value ? tt_feedback_fill(out, pattern, &name, &value, 1) : TT_OK;
    return status == TT_OK ? tt_text_append(out, "", 1) : status;
}

/* What the teacher is shown of solution and feedback, as TRL's reprompt_template has it, in the prompt of the
 * task, to the end of ids. */
static inline tt_status tt_feedback_prompt(const tt_feedback_setup *s, const tt_prompts *prompts,
                                           const char *question, const char *shown, const char *said,
                                           tt_ids *ids) {
    static const char *const names[] = {"{prompt}", "{solution}", "{feedback}"};
    const char *around_solution = s->solution_template ? s->solution_template : TT_SOLUTION_TEMPLATE;
    const char *around_feedback = s->feedback_template ? s->feedback_template : TT_FEEDBACK_TEMPLATE;
    const char *reprompt = s->reprompt_template ? s->reprompt_template : TT_REPROMPT_TEMPLATE;
    const char *pattern = prompts->task->prompt_template, *values[3];
    tt_text solution = TT_INIT, feedback = TT_INIT, whole = TT_INIT;
    tt_status status;
    solution.ctx = feedback.ctx = whole.ctx = prompts->ctx;
    status = tt_feedback_part(&solution, around_solution, "{successful_previous_attempt}", shown);
    if (status == TT_OK) { status = tt_feedback_part(&feedback, around_feedback, "{feedback_raw}", said); }
    values[0] = question;
    values[1] = solution.data;
    values[2] = feedback.data;
    if (status == TT_OK) { status = tt_feedback_fill(&whole, reprompt, names, values, 3); }
    if (status == TT_OK) {
        status = tt_encode_prompt(prompts->tokenizer, pattern, strlen(pattern), whole.data, whole.size,
                                  ids);
    }
    tt_text_free(&solution);
    tt_text_free(&feedback);
    tt_text_free(&whole);
    return status;
}

/* The context of response i to the end of ids; none where there is nothing to be read. */
static inline tt_status tt_feedback_context(const tt_feedback_setup *s, const tt_prompts *prompts,
                                            const tt_rollouts *all, int i, const char *said, tt_ids *ids) {
    const tt_rollout *r = &all->items[i], *sibling = NULL;
    const char *question = tt_prompts_question(prompts, r->group), *shown = "";
    tt_text text = TT_INIT;
    tt_status status = TT_OK;
    text.ctx = all->ctx;
    if (!tt_feedback_is_own(r) || (s->method->routes && !*said)) { return TT_OK; }
    if (s->method->reads == TT_READS_NOTHING) {
        return tt_ids_append(ids, r->tokens, (size_t)r->prompt_length);
    }
    if (s->method->reads == TT_READS_GOLD) { shown = tt_prompts_answer(prompts, r->group); }
    if (s->method->reads == TT_READS_ATTEMPTS) { sibling = tt_feedback_sibling(s, all, i); }
    if (sibling) {
        status = tt_feedback_decode(prompts->tokenizer, sibling, &text);
        shown = text.data;
    }
    if (status == TT_OK && (*shown || *said)) {
        status = tt_feedback_prompt(s, prompts, question, shown, said, ids);
    }
    tt_text_free(&text);
    return status;
}

/* ---- the hook of the trainer: q becomes advantages ---- */

/* contexts[i] for each of the student's own responses; at: room for n + 1 places. */
static inline tt_status tt_feedback_contexts(tt_feedback_setup *s, const tt_prompts *prompts,
                                             tt_rollouts *all, tt_ids *ids, size_t *at,
                                             tt_request *contexts) {
    tt_feedback_texts texts = TT_INIT;
    tt_status status = tt_feedback_ask(s, prompts, all, &texts);
    int i;
    for (i = 0; i < all->n && status == TT_OK; i++) {
        status = tt_feedback_context(s, prompts, all, i, texts.said.data + texts.at[i], ids);
        at[i + 1] = ids->size;
    }
    for (i = 0; i < all->n && status == TT_OK; i++) {
        contexts[i].prompt = ids->data + at[i];
        contexts[i].prompt_length = (int)(at[i + 1] - at[i]);
        s->n_no_context += contexts[i].prompt_length == 0 && tt_feedback_is_own(&all->items[i]);
    }
    tt_feedback_texts_free(&texts, all);
    return status;
}

/* Of one response: A_t = q - o, with gamma the sum of gamma^k (q - o) from t on; q is overwritten. One of the
 * student's that has no q leaves the loss, unless the policy loss is part of the method. */
static inline tt_status tt_feedback_advantages(const tt_feedback_setup *s, tt_rollouts *all, int i, float *q,
                                               const float *o) {
    tt_rollout *r = &all->items[i];
    unsigned char *kind = r->kind + r->prompt_length;
    double later = 0, gamma = (double)s->gamma;
    int t;
    if (isnan(q[0])) {
        int stays = s->method->routes || (s->distillation_weight > 0 && s->distillation_weight < 1);
        if (stays || !tt_feedback_is_own(r)) { return TT_OK; }
        memset(kind, TT_KIND_ENVIRONMENT, (size_t)r->response_length);
        return TT_OK;
    }
    for (t = r->response_length - 1; t >= 0; t--) {
        if (kind[t] == TT_KIND_STUDENT) { later = (double)q[t] - (double)o[t] + gamma * later; }
        q[t] = kind[t] == TT_KIND_STUDENT ? (float)later : 0;
    }
    return tt_rollout_advantages(all, i, q);
}

/* desc.advise: the teacher scores, behind what it alone may read. Where the trainer needs no o of its own, it
 * is the student's at this moment. */
static inline tt_status tt_feedback_advise(void *user, const tt_prompts *prompts, tt_rollouts *all) {
    tt_feedback_setup *s = (tt_feedback_setup *)user;
    size_t n = (size_t)all->n, total = 0, place = 0;
    tt_scoring scoring = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_request *contexts = (tt_request *)tt_alloc(all->ctx, n, sizeof *contexts);
    size_t *at = (size_t *)tt_alloc(all->ctx, n + 1, sizeof *at);
    float *q = NULL, *o = NULL;
    tt_status status = contexts && at ? TT_OK : TT_ERR_MEM;
    int i, skipped = 0;
    ids.ctx = all->ctx;
    for (i = 0; i < all->n; i++) { total += (size_t)all->items[i].response_length; }
    q = (float *)tt_alloc(all->ctx, 2 * total, sizeof *q);
    if (status == TT_OK && !q) { status = TT_ERR_MEM; }
    o = q ? q + total : NULL;
    scoring.temperature = s->grpo.temperature;
    scoring.micro_batch_tokens = s->grpo.micro_batch_tokens;
    if (status == TT_OK) { status = tt_feedback_contexts(s, prompts, all, &ids, at, contexts); }
    scoring.model = s->student;
    if (status == TT_OK && !all->items[0].old_logprobs) {
        status = tt_rollouts_logprobs(all, &scoring, o, NULL);
    }
    scoring.model = s->teacher_model;
    scoring.contexts = contexts;
    scoring.skip_long = 1;
    if (status == TT_OK) { status = tt_rollouts_logprobs(all, &scoring, q, &skipped); }
    s->n_too_long += skipped;
    for (i = 0; i < all->n && status == TT_OK; i++) {
        const tt_rollout *r = &all->items[i];
        s->n_scored += !isnan(q[place]);
        status = tt_feedback_advantages(s, all, i, q + place, r->old_logprobs ? r->old_logprobs : o + place);
        place += (size_t)r->response_length;
    }
    tt_ids_free(&ids);
    tt_free(all->ctx, contexts, n, sizeof *contexts);
    tt_free(all->ctx, at, n + 1, sizeof *at);
    tt_free(all->ctx, q, 2 * total, sizeof *q);
    return status;
}

/* desc.advise of rltf_sd with refined_only. */
static inline tt_status tt_feedback_refined_only(void *user, const tt_prompts *prompts, tt_rollouts *all) {
    int i;
    (void)user;
    (void)prompts;
    for (i = 0; i < all->n; i++) {
        tt_rollout *r = &all->items[i];
        if (r->off_policy) { continue; }
        memset(r->kind + r->prompt_length, TT_KIND_ENVIRONMENT, (size_t)r->response_length);
    }
    return TT_OK;
}

/* ---- a row into the settings of a trainer ---- */

static inline tt_status tt_feedback_wants(tt_context *ctx, const tt_feedback_method *m, const char *what) {
    return tt_fail(ctx, TT_ERR_ARG, "feedback: %s wants %s, which is NULL", m->name, what);
}

/* desc has model, tokenizer, task and, for feedback, teacher; setup lives as long as the trainer. One y1 a
 * prompt, from a teacher that stays, unless desc.think says otherwise. */
static inline tt_status tt_feedback_apply(tt_context *ctx, const char *name, tt_feedback_setup *s,
                                          tt_trainer_desc *desc) {
    const tt_feedback_method *m = tt_feedback_method_find(ctx, name);
    const char *names[1] = {"{question}"}, *values[1] = {TT_REFINE_TEMPLATE};
    tt_text refine = TT_INIT;
    tt_status status = TT_OK;
    if (!m) { return TT_ERR_ARG; }
    if (m->teacher && !desc->teacher) { return tt_feedback_wants(ctx, m, "desc.teacher"); }
    if (m->scores && !s->teacher_model) { return tt_feedback_wants(ctx, m, "setup.teacher_model"); }
    s->method = m;
    s->student = desc->model;
    s->teacher = m->reads == TT_READS_ATTEMPTS ? desc->teacher : NULL;
    s->separator = desc->think.separator ? desc->think.separator : "\n\n";
    if (m->token_loss || m->off_policy_loss || m->refines) {
        desc->grpo.advantage = m->advantage;
        desc->grpo.scale_rewards = m->scale;
        desc->grpo.token_loss = m->token_loss;
        desc->grpo.off_policy_loss = m->off_policy_loss;
        desc->grpo.token_loss_user = s;
    }
    if (m->scores) {
        desc->teacher = NULL;          /* it is asked by the hook, and nothing is appended */
        desc->advise = tt_feedback_advise;
        desc->advise_user = s;
    }
    s->grpo = desc->grpo;
    if (!m->refines) { return TT_OK; }
    if (m->refines == 2 && s->refined_only) { desc->advise = tt_feedback_refined_only; }
    refine.ctx = ctx;
    if (!s->refine) { status = tt_feedback_fill(&refine, desc->task->prompt_template, names, values, 1); }
    if (status == TT_OK && refine.size >= sizeof s->text) {
        status = tt_fail(ctx, TT_ERR_ARG, "feedback: the prompt to refine has %lu bytes, expected fewer "
                         "than %d", (unsigned long)refine.size, (int)sizeof s->text);
    }
    if (status == TT_OK && !s->refine) { memcpy(s->text, refine.data, refine.size); }
    tt_text_free(&refine);
    desc->think.refine = s->refine ? s->refine : s->text;
    if (desc->think.init_pct == 0) {
        desc->think.schedule = TT_THINK_CONSTANT;
        desc->think.init_pct = desc->think.min_pct = 0.01f;
        desc->think.off_eps = -1;
    }
    return status;
}

#endif
