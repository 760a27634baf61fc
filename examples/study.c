/* study.c - the paper's table and its ablations in miniature, with error bars.
 *
 *     make study                                  (= build/study --out runs/study --seeds 5)
 *     build/study --quick --seeds 2 --out runs/look   (minutes, to see that it runs; numbers mean nothing)
 *
 * One base per seed and kind is trained once; every arm starts from it, differs from the arm "thinktune" in
 * one factor, and is measured alone on held-out questions. Kill it at any time: the same command goes on
 * where it stopped, and what is done is never done again. A new row in the table of arms is run by the next
 * start.
 *
 * OUT gets results.jsonl (one line per seed and arm), table.md, report.html, and beneath seed-SEED/ARM/ the
 * metrics of every step. All of them are the same bytes for the same seeds and settings, however often the
 * run was interrupted. */
#define THINKTUNING_IMPLEMENTATION
#include "experiment.h"

/* ---- the arms ---- */
/* Weak: with 0.4 of the pretraining. Low coherence: with 0.7 of it, and notes in its first half alone. The
 * control is another task. Reads: some documents show the student attempts, feedback and solutions. */
typedef enum base_kind { BASE_FULL = 0, BASE_WEAK, BASE_LOW, BASE_CONTROL, BASE_READS, N_BASES } base_kind;
#define READS_SHARE 0.15
typedef enum method { THINK = 0, GRPO, SFT, BASE } method;
typedef enum teacher_kind { FROZEN = 0, STUDENT, EMA, OTHER, RULE } teacher_kind;

typedef struct arm {
    const char *name, *part, *what;
    double work;                  /* seconds on two quiet cores, for the time left                         */
    base_kind base;
    method method;
    teacher_kind teacher;
    int steps;                    /* 0 = those of the options                                              */
    int generations;              /* responses per prompt; 0 = those of the options                        */
    const char *equal_tokens;     /* ends once it has sampled as many tokens as this arm of its seed       */
    int questions;                /* of its evaluation; 0 = those of the options                           */
    const char *aas, *mask, *schedule;
    double init_pct, off_eps;     /* 0 = those of the options                                              */
    double corrupt;               /* share of attempts that get the feedback on another attempt            */
    double marker;                /* probability of "\n\n" where the student would end; 0 = as it is       */
    const char *feedback;         /* a method of feedback.h                                                */
    const char *from;             /* the student starts where this arm of its seed has ended; NULL = base  */
    int keeps;                    /* 1: its student is kept for such arms                                  */
} arm;

/* In the order in which they are run, all seeds of one before the next. */
static const arm arms[] = {
    {.name = "base", .part = "main", .what = "before RL", .work = 80, .method = BASE},
    {.name = "thinktune", .part = "main", .what = "ThinkTuning (released shaping)", .work = 11},
    {.name = "grpo", .part = "main", .what = "GRPO, equal rollouts", .work = 4, .method = GRPO},
    {.name = "grpo_tokens", .part = "main", .what = "GRPO, equal sampled tokens",
     .work = 22, .method = GRPO, .steps = 1000, .equal_tokens = "thinktune"},
    {.name = "sft", .part = "main", .what = "SFT on the teacher's right outputs, equal rollouts",
     .work = 15, .method = SFT},
    {.name = "sft_feedback", .part = "main", .what = "SFT on them, as much feedback as ThinkTuning",
     .work = 4, .method = SFT, .steps = 14, .generations = 1},
    {.name = "base_low", .part = "low", .what = "weaker base, 0.4 of the pretraining",
     .work = 32, .method = BASE, .base = BASE_WEAK},
    {.name = "low_thinktune", .part = "low", .what = "ThinkTuning, weaker base",
     .work = 11, .base = BASE_WEAK},
    {.name = "low_grpo", .part = "low", .what = "GRPO, weaker base, 250 steps",
     .work = 14, .base = BASE_WEAK, .method = GRPO, .steps = 250},
    {.name = "base_incoherent", .part = "low", .what = "base of low coherence",
     .work = 56, .method = BASE, .base = BASE_LOW},
    {.name = "incoherent_thinktune", .part = "low", .what = "ThinkTuning, low coherence",
     .work = 12, .base = BASE_LOW},
    {.name = "incoherent_thinktune_long", .part = "low", .what = "ThinkTuning, low coherence, 150 steps",
     .work = 36, .base = BASE_LOW, .steps = 150},
    {.name = "incoherent_grpo", .part = "low", .what = "GRPO, low coherence, equal rollouts",
     .work = 4, .base = BASE_LOW, .method = GRPO},
    {.name = "incoherent_grpo_long", .part = "low", .what = "GRPO, low coherence, 250 steps",
     .work = 14, .base = BASE_LOW, .method = GRPO, .steps = 250},
    {.name = "incoherent_grpo_tokens", .part = "low",
     .what = "GRPO, low coherence, as many tokens as the 150 steps",
     .work = 110, .base = BASE_LOW, .method = GRPO, .steps = 3000,
     .equal_tokens = "incoherent_thinktune_long"},
    {.name = "formula", .part = "shaping", .what = "AAS as the text has it", .work = 9, .aas = "formula"},
    {.name = "luffy", .part = "shaping", .what = "LUFFY's shaping", .work = 9, .aas = "luffy"},
    {.name = "off", .part = "shaping", .what = "no shaping: the ordinary term", .work = 9, .aas = "off"},
    {.name = "appended", .part = "mask", .what = "only the teacher's tokens shaped",
     .work = 11, .mask = "appended"},
    {.name = "teacher_rule", .part = "teacher", .what = "a rule that is always right",
     .work = 10, .teacher = RULE},
    {.name = "teacher_student", .part = "teacher", .what = "the current student",
     .work = 11, .teacher = STUDENT},
    {.name = "teacher_ema", .part = "teacher", .what = "moving average of the student",
     .work = 11, .teacher = EMA},
    {.name = "teacher_other", .part = "teacher", .what = "the base of another seed",
     .work = 11, .teacher = OTHER},
    {.name = "corrupt_25", .part = "quality", .what = "25 % of the feedback on another attempt",
     .work = 11, .corrupt = 0.25},
    {.name = "corrupt_50", .part = "quality", .what = "50 %", .work = 11, .corrupt = 0.5},
    {.name = "corrupt_100", .part = "quality", .what = "all of it", .work = 8, .corrupt = 1},
    {.name = "base_control", .part = "control", .what = "base of the task guess",
     .work = 16, .method = BASE, .base = BASE_CONTROL},
    {.name = "control_grpo", .part = "control", .what = "GRPO, control",
     .work = 4, .base = BASE_CONTROL, .method = GRPO},
    {.name = "control_thinktune", .part = "control", .what = "ThinkTuning, control",
     .work = 8, .base = BASE_CONTROL},
#define RARE(shaping, p, text)                                                                         \
    {.name = "rare_" shaping "_" text, .part = "rare", .what = shaping ", marker at " text, .work = 7, \
     .aas = shaping, .marker = p, .schedule = "constant", .init_pct = 0.1, .off_eps = -1,              \
     .steps = 40, .questions = 128}
    RARE("released", 3e-4, "3e-4"), RARE("formula", 3e-4, "3e-4"),
    RARE("released", 1e-4, "1e-4"), RARE("formula", 1e-4, "1e-4"),
    RARE("released", 1e-5, "1e-5"), RARE("formula", 1e-5, "1e-5"),
    RARE("released", 1e-7, "1e-7"), RARE("formula", 1e-7, "1e-7"),
    {.name = "always", .part = "schedule", .what = "the teacher stays for all steps",
     .work = 14, .off_eps = -1},
    {.name = "constant", .part = "schedule", .what = "constant share, all steps",
     .work = 14, .schedule = "constant"},
    {.name = "pct_5", .part = "share", .what = "5 % at first, leaving at the same step",
     .work = 11, .init_pct = 0.05, .off_eps = 0.009},
    {.name = "pct_10", .part = "share", .what = "10 % at first", .work = 11, .init_pct = 0.1},
    {.name = "pct_50", .part = "share", .what = "50 % at first", .work = 12, .init_pct = 0.5},
    {.name = "cosine", .part = "schedule", .what = "cosine", .work = 11, .schedule = "cosine"},
    {.name = "exp", .part = "schedule", .what = "exponential", .work = 11, .schedule = "exp"},
    /* The parts "create" and "keep": make study-feedback. */
    {.name = "reads", .part = "create", .what = "base that can read feedback", .work = 80,
     .method = BASE, .base = BASE_READS},
    {.name = "reads_thinktune", .part = "create", .what = "ThinkTuning", .work = 11, .base = BASE_READS,
     .keeps = 1},
    {.name = "reads_grpo", .part = "create", .what = "GRPO", .work = 4, .base = BASE_READS, .method = GRPO},
    {.name = "reads_grpo_tokens", .part = "create", .what = "GRPO, as many tokens as ThinkTuning", .work = 22,
     .base = BASE_READS, .method = GRPO, .steps = 1000, .equal_tokens = "reads_thinktune"},
    {.name = "reads_sft", .part = "create", .what = "SFT on the teacher's right outputs", .work = 15,
     .base = BASE_READS, .method = SFT},
#define RELATIVES(where, prefix, start)                                                                  \
    {.name = prefix "critique_grpo", .part = where, .what = "Critique-GRPO", .work = 12,                  \
     .base = BASE_READS, .feedback = "critique_grpo", .from = start},                                    \
    {.name = prefix "rltf_sd", .part = where, .what = "RLTF, self-distillation", .work = 12,              \
     .base = BASE_READS, .feedback = "rltf_sd", .from = start},                                          \
    {.name = prefix "sdpo", .part = where, .what = "SDPO, right sibling and feedback", .work = 25,        \
     .base = BASE_READS, .feedback = "sdpo", .from = start},                                             \
    {.name = prefix "sdpo_sibling", .part = where, .what = "SDPO, right sibling alone", .work = 9,        \
     .base = BASE_READS, .method = GRPO, .feedback = "sdpo", .from = start},                             \
    {.name = prefix "opsd", .part = where, .what = "OPSD, the solution", .work = 9,                       \
     .base = BASE_READS, .method = GRPO, .feedback = "opsd", .from = start},                             \
    {.name = prefix "srpo", .part = where, .what = "SRPO", .work = 25,                                    \
     .base = BASE_READS, .feedback = "srpo", .from = start}
    RELATIVES("create", "reads_", NULL),
    {.name = "keep_thinktune", .part = "keep", .what = "ThinkTuning, 50 further steps", .work = 11,
     .base = BASE_READS, .from = "reads_thinktune"},
    {.name = "keep_grpo", .part = "keep", .what = "GRPO, 50 further steps", .work = 8,
     .base = BASE_READS, .method = GRPO, .from = "reads_thinktune"},
    RELATIVES("keep", "keep_", "reads_thinktune")
};
enum { N_ARMS = sizeof arms / sizeof *arms };

/* ---- options ---- */
static options given;
static const char *only = "";

static const option option_list[] = {
    {"--seeds", OPTION_INT, &given.seeds, 1, MAX_SEEDS, "how many seeds"},
    {"--first-seed", OPTION_INT, &given.first_seed, 0, 1000000, "the first of them"},
    {"--out", OPTION_TEXT, &given.out, 0, 0, "folder of all results"},
    {"--only", OPTION_TEXT, &only, 0, 0,
     "arms to run, by name, or the parts create and keep, with commas; empty = all but these parts"},
    {"--steps", OPTION_INT, &given.steps, 1, 1e6, "RL steps of an arm"},
    {"--pretrain-steps", OPTION_INT, &given.pretrain_steps, 1, 1e7,
     "of a base; a weaker one has 0.4 of them, one of low coherence 0.7"},
    {"--questions", OPTION_INT, &given.questions, 1, 1e6,
     "held-out questions of an evaluation, half as many for ablations"},
    {"--quick", OPTION_FLAG, &given.quick, 0, 0,
     "a few steps of everything, to see that it runs; numbers mean nothing"},
    {"--threads", OPTION_INT, &given.threads, 0, 1024, "0 = all; results do not depend on it"}
};
enum { N_OPTIONS = sizeof option_list / sizeof *option_list };

/* The settings of one arm: the options, but for its one factor. */
static options arm_options(const arm *m) {
    options o = given;
    int is_ablation = find_word("main,low,create,keep", m->part, strlen(m->part)) < 0;
    o.resume = 1;
    if (m->steps) { o.steps = m->steps; }
    if (m->generations) { o.generations = m->generations; }
    if (is_ablation) { o.questions = (o.questions + 1) / 2; }      /* seeds differ by more */
    if (m->questions) { o.questions = m->questions; }
    if (m->aas) { o.aas = m->aas; }
    if (m->mask) { o.mask = m->mask; }
    if (m->schedule) { o.schedule = m->schedule; }
    if (m->init_pct > 0) { o.init_pct = m->init_pct; }
    if (m->off_eps != 0) { o.off_eps = m->off_eps; }
    if (m->base == BASE_WEAK) { o.pretrain_steps = o.pretrain_steps * 4 / 10; }
    if (m->base == BASE_LOW) {
        o.pretrain_steps = o.pretrain_steps * 7 / 10;
        o.notes_until = 0.5;
    }
    if (m->base == BASE_READS) { o.reads = READS_SHARE; }
    if (m->base == BASE_CONTROL) {
        o.pretrain_steps = o.pretrain_steps / 5;
        o.task = "guess";
    }
    if (o.quick) {
        o.steps = o.steps < 6 ? o.steps : 6;
        o.pretrain_steps = o.pretrain_steps / 100 + 1;
        o.questions = 64;
        o.gate_questions = 32;
        o.prompts = 4;
    }
    return o;
}

/* NULL if there is none. */
static const arm *find_arm(const char *name, size_t size) {
    int i;
    for (i = 0; i < N_ARMS; i++) {
        if (strlen(arms[i].name) == size && memcmp(arms[i].name, name, size) == 0) { return &arms[i]; }
    }
    return NULL;
}

static const arm *arm_named(const char *name) { return find_arm(name, strlen(name)); }

/* ---- the marker: how likely "\n\n" is where an attempt would end ----
 * gap = its logit at that place; every gap can be shifted alike by moving the marker's row of the head along
 * the mean of the hidden states there. */
typedef struct ends {
    int n, width, vocab, marker;
    float *hidden, *head;         /* [n, width], [vocab, width] */
} ends;

/* Row i of hidden or head. */
static float *row_of(const ends *e, float *matrix, int i) { return matrix + (size_t)i * (size_t)e->width; }

static void free_ends(app *a, ends *e) {
    tt_free(a->ctx, e->hidden, (size_t)e->n * (size_t)e->width, sizeof *e->hidden);
    tt_free(a->ctx, e->head, (size_t)e->vocab * (size_t)e->width, sizeof *e->head);
}

/* The last hidden state of each attempt, which the token behind it is predicted from. */
static tt_status read_last_hidden(app *a, tt_model *model, const tt_rollouts *attempts, int32_t *rows,
                                  float *out) {
    tt_tensor *hidden = NULL;
    tt_batch *batch;
    int i, row = 0;
    tt_no_grad_begin(a->ctx);
    batch = tt_rollouts_batch(a->ctx, attempts, NULL, 0);
    for (i = 0; batch && i < attempts->n; i++) {
        row += attempts->items[i].response_length;
        rows[i] = batch->target_rows[row - 1];
    }
    if (batch) { hidden = tt_gather_rows(a->ctx, tt_model_forward(model, batch), rows, attempts->n); }
    tt_no_grad_end(a->ctx);
    return hidden ? tt_tensor_get(hidden, out) : tt_eval(a->ctx);
}

static tt_status read_ends(app *a, tt_model *model, const tt_rollouts *attempts, ends *e) {
    int32_t *rows = (int32_t *)tt_alloc(a->ctx, (size_t)attempts->n, sizeof *rows);
    tt_tensor *head = tt_model_param_find(model, "lm_head.weight");
    tt_status status = TT_ERR_MEM;
    e->n = attempts->n;
    e->width = tt_model_config_get(model)->hidden_size;
    e->vocab = tt_model_config_get(model)->vocab_size;
    e->marker = tt_token_id(a->tokenizer, "\n\n");
    e->hidden = (float *)tt_alloc(a->ctx, (size_t)e->n * (size_t)e->width, sizeof *e->hidden);
    e->head = (float *)tt_alloc(a->ctx, (size_t)e->vocab * (size_t)e->width, sizeof *e->head);
    if (rows && e->hidden && e->head) {
        status = read_last_hidden(a, model, attempts, rows, e->hidden);
        if (status == TT_OK) { status = tt_tensor_get(head, e->head); }
        tt_step_reset(a->ctx);
    }
    tt_free(a->ctx, rows, (size_t)attempts->n, sizeof *rows);
    return status;
}

static double dot(const float *x, const float *y, int n) {
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) { sum += (double)x[i] * (double)y[i]; }
    return sum;
}

/* Mean probability of the marker with its row moved by shift * along. */
static double marker_probability(const ends *e, const float *along, double shift) {
    double mean = 0;
    int i, v;
    for (i = 0; i < e->n; i++) {
        const float *h = row_of(e, e->hidden, i);
        double moved = shift * dot(h, along, e->width), others = 0;
        double gap = dot(h, row_of(e, e->head, e->marker), e->width) + moved;
        for (v = 0; v < e->vocab; v++) {
            if (v != e->marker) { others += exp(dot(h, row_of(e, e->head, v), e->width) - gap); }
        }
        mean += 1 / (1 + others) / e->n;
    }
    return mean;
}

/* The shift of the marker's row at which its mean probability is p, to a thousandth. */
static double shift_for(const ends *e, const float *along, double p) {
    double low = -40, high = 40;
    while (high - low > 1e-3) {
        double middle = (low + high) / 2;
        if (marker_probability(e, along, middle) < p) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Moves the marker's row in e->head. along: room for `width` values, zeros. */
static void move_marker(ends *e, float *along, double p) {
    double square, shift;
    int i, k;
    for (i = 0; i < e->n; i++) {
        for (k = 0; k < e->width; k++) { along[k] += row_of(e, e->hidden, i)[k] / (float)e->n; }
    }
    square = dot(along, along, e->width);
    for (k = 0; k < e->width; k++) { along[k] /= (float)square; }
    shift = shift_for(e, along, p);
    for (k = 0; k < e->width; k++) { row_of(e, e->head, e->marker)[k] += (float)shift * along[k]; }
}

/* Gives the marker the mean probability p. */
static tt_status set_marker(app *a, tt_model *model, const tt_rollouts *attempts, double p) {
    ends e = TT_INIT;
    tt_status status = read_ends(a, model, attempts, &e);
    float *along = (float *)tt_alloc(a->ctx, (size_t)e.width, sizeof *along);
    if (status == TT_OK && !along) { status = TT_ERR_MEM; }
    if (status == TT_OK) {
        move_marker(&e, along, p);
        status = tt_tensor_set(tt_model_param_find(model, "lm_head.weight"), e.head);
    }
    tt_free(a->ctx, along, (size_t)e.width, sizeof *along);
    free_ends(a, &e);
    return status;
}

static tt_status get_marker(app *a, tt_model *model, const tt_rollouts *attempts, double *p) {
    ends e = TT_INIT;
    tt_status status = read_ends(a, model, attempts, &e);
    if (status == TT_OK) { *p = marker_probability(&e, e.hidden, 0); }
    free_ends(a, &e);
    return status;
}

/* ---- teachers ---- */
typedef struct corrupter { tt_teacher inner; double share; uint64_t seed; } corrupter;

static void swap_feedback(tt_feedback *x, tt_feedback *y) {
    tt_feedback was = *x;
    *x = *y;
    *y = was;
}

/* A share of the attempts, drawn by what they say, hand their feedback round among themselves. */
static tt_status corrupt_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    corrupter *c = (corrupter *)user;
    int i, last = -1;
    CHECK(c->inner.feedback(c->inner.user, attempts, n, out));
    for (i = 0; i < n; i++) {
        uint64_t said = tt_hash(attempts[i].response, attempts[i].response_size, 0);
        tt_rng rng;
        rng.seed = c->seed;
        rng.stream = tt_hash(attempts[i].question, attempts[i].question_size, said);
        rng.index = 0;
        if (tt_rng_uniform(&rng) >= c->share) { continue; }
        if (last >= 0) { swap_feedback(&out[last], &out[i]); }
        last = i;
    }
    return TT_OK;
}

typedef struct teaching {
    tt_model *model;
    tt_model_teacher *prompted;
    tt_tokenizer *tokenizer;
    corrupter corrupter;
    tt_teacher teacher;
} teaching;

static void close_teaching(teaching *t) {
    tt_model_teacher_destroy(t->prompted);
    tt_model_destroy(t->model);
    tt_tokenizer_destroy(t->tokenizer);
}

/* The base of the next seed, which reads and writes with its own tokenizer. */
static tt_status other_base(const app *a, teaching *t) {
    app other = *a;
    int is_last = a->seed + 1 >= a->o.first_seed + a->o.seeds;
    tt_status status;
    other.seed = is_last ? a->o.first_seed : a->seed + 1;
    other.base = NULL;
    other.tokenizer = NULL;
    other.signs = NULL;
    status = open_base(&other);
    t->model = other.base;
    t->tokenizer = other.tokenizer;
    other.base = NULL;
    other.tokenizer = NULL;
    close_base(&other);
    return status;
}

/* The model that teaches, where it is not the student, and the tokenizer it reads with where that differs. */
static tt_status teaching_model(app *a, const arm *m, teaching *t) {
    if (m->teacher == STUDENT) { return TT_OK; }
    if (m->teacher == OTHER) { return other_base(a, t); }
    t->model = tt_model_copy(a->base);
    return t->model ? TT_OK : tt_error_status(a->ctx);
}

static tt_status open_teaching(app *a, const arm *m, tt_model *student, teaching *t) {
    app reader = *a;
    if (m->teacher == RULE) {
        t->teacher = tt_signs_teacher(a->signs);
        return TT_OK;
    }
    CHECK(teaching_model(a, m, t));
    if (t->tokenizer) { reader.tokenizer = t->tokenizer; }
    t->prompted = make_teacher(&reader, m->teacher == STUDENT ? student : t->model);
    if (!t->prompted) { return tt_error_status(a->ctx); }
    t->teacher = tt_teacher_model(t->prompted);
    if (m->corrupt > 0) {
        t->corrupter.inner = t->teacher;
        t->corrupter.share = m->corrupt;
        t->corrupter.seed = (uint64_t)a->seed;
        t->teacher.feedback = corrupt_feedback;
        t->teacher.user = &t->corrupter;
    }
    return TT_OK;
}

/* ---- one arm of one seed ---- */
static tt_status read_number(app *a, int seed, const char *name, const char *key, double *out) {
    tt_json *json = NULL;
    tt_status status = read_json(a, result_path(a, seed, name), &json);
    *out = tt_json_number(json, key, 0);
    tt_json_free(a->ctx, json);
    return status;
}

/* What the steps said: totals, and rollouts until the student's own reflection first passes 10 % and 50 %, -1
 * = never. */
typedef struct learning {
    int n, n_hits;
    double per_step, tokens, first_10, first_50;
    double hits, scored, no_context, said;      /* of a method of feedback.h; hits: sum over n_hits steps */
} learning;

static tt_status add_step(learning *l, const tt_json *line, tt_text *curve) {
    double reflection = tt_json_number(line, "think/reflection_rate", 0);
    double reward = tt_json_number(line, "think/own_reward", 0);
    const char *comma = l->n++ ? "," : "";
    l->said += tt_json_number(line, "feedback/teacher_tokens", 0);
    l->tokens = tt_json_number(line, "num_tokens", 0) + l->said;
    l->scored += tt_json_number(line, "feedback/scored", 0);
    l->no_context += tt_json_number(line, "feedback/no_context", 0);
    l->n_hits += tt_json_number(line, "think/n_guided", 0) > 0;
    l->hits += tt_json_number(line, "think/teacher_accuracy", 0);
    if (l->first_10 < 0 && reflection >= 0.1) { l->first_10 = l->per_step * l->n; }
    if (l->first_50 < 0 && reflection >= 0.5) { l->first_50 = l->per_step * l->n; }
    return tt_text_format(curve, "%s[%.4g,%.4g]", comma, reward, reflection);
}

static tt_status write_learning(const learning *l, const tt_text *curve, tt_text *json) {
    CHECK(tt_text_format(json, ",\"rollouts\":%r,\"num_tokens\":%r", l->per_step * l->n, l->tokens));
    CHECK(tt_text_format(json, ",\"first_10\":%r,\"first_50\":%r", l->first_10, l->first_50));
    return tt_text_format(json, ",\"curve\":[%s]", curve->data);
}

/* What the method itself has reached: how many answers after feedback were right, or how many responses had a
 * teacher that could read something. */
static tt_status write_method(const learning *l, tt_text *json) {
    if (l->n_hits > 0) { return tt_text_format(json, ",\"method\":{\"hit\":%r}", l->hits / l->n_hits); }
    return tt_text_format(json, ",\"method\":{\"scored\":%r,\"no_context\":%r}", l->scored, l->no_context);
}

static tt_status write_curve(app *a, const arm *m, const char *path, tt_text *json) {
    tt_text curve = new_text(a);
    tt_json_lines lines = TT_INIT;
    tt_json *line;
    learning l;
    tt_status status;
    memset(&l, 0, sizeof l);
    l.first_10 = l.first_50 = -1;
    l.per_step = (double)a->o.prompts * a->o.generations;
    lines.ctx = a->ctx;
    status = tt_json_lines_open(&lines, path);
    while (status == TT_OK && (status = tt_json_lines_next(&lines, &line)) == TT_OK && line) {
        status = add_step(&l, line, &curve);
        tt_json_free(a->ctx, line);
    }
    if (status == TT_OK) { status = tt_text_append(&curve, "", 0); }
    if (status == TT_OK) { status = write_learning(&l, &curve, json); }
    if (status == TT_OK && m->feedback) { status = write_method(&l, json); }
    tt_json_lines_close(&lines);
    tt_text_free(&curve);
    return status;
}

static tt_status train_rl(app *a, const arm *m, tt_model *student, const teaching *t, tt_text *json) {
    int alone = m->method == GRPO;
    tt_trainer_desc desc = arm_desc(a, student, alone ? "grpo" : "thinktune", alone ? NULL : &t->teacher);
    char metrics[PATH_SIZE];
    tt_status status;
    strcpy(metrics, path_of(a->o.out, "seed-%d/%s/metrics.jsonl", a->seed, m->name));
    a->stop_tokens = 0;
    if (m->equal_tokens) { CHECK(read_number(a, a->seed, m->equal_tokens, "num_tokens", &a->stop_tokens)); }
    a->follower = m->teacher == EMA ? t->model : NULL;
    status = m->feedback ? open_feedback(a, m->feedback, &desc) : TT_OK;
    if (status == TT_OK) { status = train_student(a, m->name, &desc, metrics, 0); }
    close_feedback(a);
    a->follower = NULL;
    CHECK(status);
    return write_curve(a, m, metrics, json);
}

static tt_status train_by(app *a, const arm *m, tt_model *student, teaching *t, tt_text *json) {
    double tokens = 0;
    if (m->method != GRPO) { CHECK(open_teaching(a, m, student, t)); }
    if (m->method != SFT) { return train_rl(a, m, student, t, json); }
    CHECK(train_sft(a, student, &t->teacher, &tokens));
    return tt_text_format(json, ",\"rollouts\":%r,\"num_tokens\":%r",
                          (double)a->o.steps * a->o.prompts * a->o.generations, tokens);
}

static tt_status train_arm(app *a, const arm *m, tt_model *student, tt_text *json) {
    teaching t;
    tt_status status;
    memset(&t, 0, sizeof t);
    status = train_by(a, m, student, &t, json);
    close_teaching(&t);
    return status;
}

/* An arm of a rare marker: its probability is set before, and told with what became of it. */
static tt_status train_with_marker(app *a, const arm *m, tt_model *student, tt_rollouts *attempts,
                                   tt_text *json) {
    double before = 0, after = 0;
    if (m->marker <= 0) { return train_arm(a, m, student, json); }
    CHECK(attempt_questions(a, a->base, 1, 0, a->o.questions, 0, (uint64_t)a->seed, attempts));
    CHECK(set_marker(a, student, attempts, m->marker));
    CHECK(get_marker(a, student, attempts, &before));
    CHECK(train_arm(a, m, student, json));
    CHECK(get_marker(a, student, attempts, &after));
    return tt_text_format(json, ",\"marker_before\":%r,\"marker_after\":%r", before, after);
}

/* Out of domain: one number more a question than any before. */
static tt_status evaluate_shift(app *a, tt_model *model, tt_text *json) {
    tt_signs_desc desc = TT_INIT;
    tt_signs *signs;
    tt_task task;
    tt_status status;
    desc.seed = (uint64_t)a->seed;
    desc.min_n = desc.max_n = 5;
    signs = tt_signs_create(a->ctx, &desc);
    if (!signs) { return tt_error_status(a->ctx); }
    task = tt_task_signs(signs);
    status = write_shift(a, model, &task, (a->o.questions + 1) / 2, json);
    tt_signs_destroy(signs);
    return status;
}

/* Held-out questions with their solutions, as opsd shows them to its teacher. */
static tt_status show_solutions(app *a, tt_prompts *asked, tt_request *requests, int n, tt_ids *ids) {
    tt_feedback_setup setup = TT_INIT;
    int i, at = 0;
    use_small_texts(a, &setup);
    for (i = 0; i < n; i++) {
        size_t begin = ids->size;
        CHECK(tt_prompts_set(asked, i, 1, (uint64_t)i));
        CHECK(tt_feedback_prompt(&setup, asked, tt_prompts_question(asked, i), tt_prompts_answer(asked, i),
                                 "", ids));
        requests[i].prompt_length = (int)(ids->size - begin);
    }
    for (i = 0; i < n; at += requests[i++].prompt_length) { requests[i].prompt = ids->data + at; }
    return TT_OK;
}

/* How often the base is right that has read the solution: below its own accuracy it cannot read, and methods
 * whose teacher reads are set up unfairly. */
static tt_status reading_hit(app *a, double *hit) {
    int n = a->o.gate_questions, i, right;
    tt_request *requests = (tt_request *)tt_alloc(a->ctx, (size_t)n, sizeof *requests);
    tt_prompts asked = TT_INIT;
    tt_ids ids = new_ids(a);
    tt_rollouts said = TT_INIT;
    tt_status status = requests ? TT_OK : TT_ERR_MEM;
    if (status == TT_OK) { status = tt_prompts_create(a->ctx, &a->task, a->tokenizer, n, &asked); }
    if (status == TT_OK) { status = show_solutions(a, &asked, requests, n, &ids); }
    if (status == TT_OK) { status = sample_prompts(a, a->base, requests, n, 0, (uint64_t)a->seed, &said); }
    for (*hit = 0, i = 0; i < n && status == TT_OK; i++) {
        const tt_rollout *r = &said.items[i];
        const int32_t *response = r->tokens + r->prompt_length;
        status = assess(a, 1, (uint64_t)i, response, r->response_length, r->stopped, &right);
        *hit += (double)right / n;
    }
    tt_rollouts_free(&said);
    tt_prompts_free(&asked);
    tt_ids_free(&ids);
    tt_free(a->ctx, requests, (size_t)n, sizeof *requests);
    return status;
}

static tt_status write_reading(app *a, tt_text *json) {
    double hit;
    CHECK(reading_hit(a, &hit));
    return tt_text_format(json, ",\"method\":{\"hit\":%r}", hit);
}

static tt_status evaluate_arm(app *a, const arm *m, tt_model *model, tt_text *json) {
    CHECK(evaluate(a, model, m->name, json));
    return m->base == BASE_READS ? evaluate_shift(a, model, json) : TT_OK;
}

/* The student of an arm that has ended. */
static tt_status start_from(app *a, const char *from, tt_model *student) {
    tt_model *other = tt_model_load(a->ctx, path_of(a->o.out, "seed-%d/%s/student", a->seed, from));
    tt_status status = other ? tt_model_assign(student, other) : tt_error_status(a->ctx);
    tt_model_destroy(other);
    return status;
}

static tt_status train_whole(app *a, const arm *m, tt_model *student, tt_rollouts *attempts, tt_text *json) {
    if (m->from) { CHECK(start_from(a, m->from, student)); }
    CHECK(train_with_marker(a, m, student, attempts, json));
    if (m->keeps) {
        CHECK(save_student(a, student, path_of(a->o.out, "seed-%d/%s/student", a->seed, m->name)));
    }
    return evaluate_arm(a, m, student, json);
}

static tt_status run_student(app *a, const arm *m, tt_text *json) {
    tt_model *student = new_student(a);
    tt_rollouts attempts = TT_INIT;
    tt_status status = student ? train_whole(a, m, student, &attempts, json) : tt_error_status(a->ctx);
    tt_rollouts_free(&attempts);
    tt_model_destroy(student);
    return status;
}

/* One line of results.jsonl; its file is what tells the next start that this job is done. */
static tt_status run_from_base(app *a, const arm *m, tt_text *json) {
    CHECK(tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, m->name)));
    CHECK(tt_text_format(json, "{\"seed\":%d,\"arm\":\"%s\"", a->seed, m->name));
    CHECK(open_base(a));
    if (m->method == BASE) {
        CHECK(evaluate_arm(a, m, a->base, json));
        CHECK(write_gate(a, json));
        if (m->base == BASE_READS) { CHECK(write_reading(a, json)); }
    } else {
        CHECK(run_student(a, m, json));
    }
    CHECK(tt_text_append(json, "}\n", 2));
    return tt_file_write(a->ctx, result_path(a, a->seed, m->name), json->data, json->size);
}

/* One line of results.jsonl; its file is what tells the next start that this job is done. */
static tt_status run_job(app *a, const arm *m) {
    tt_text json = new_text(a);
    tt_status status = run_from_base(a, m, &json);
    if (status == TT_OK) { remove(path_of(a->o.out, "seed-%d/%s/train.state", a->seed, m->name)); }
    close_base(a);
    tt_text_free(&json);
    return status;
}

/* ---- all jobs ---- */
#define ASKED_PARTS "create,keep"      /* parts that are run only if they are named */

static void check_only(void) {
    const char *at = only;
    while (*at) {
        size_t size = strcspn(at, ",");
        if (!find_arm(at, size) && find_word(ASKED_PARTS, at, size) < 0) {
            example_exit(2, "study: --only names \"%.*s\", which is no arm", (int)size, at);
        }
        at += size + (at[size] == ',');
    }
}

static int wanted(const arm *m) {
    int asked = find_word(ASKED_PARTS, m->part, strlen(m->part)) >= 0;
    if (!*only) { return !asked; }
    if (asked && find_word(only, m->part, strlen(m->part)) >= 0) { return 1; }
    return find_word(only, m->name, strlen(m->name)) >= 0;
}

/* The table's seconds are those of the default options. */
static double work_of(const arm *m) {
    options o = arm_options(m), d = default_options();
    double steps = (double)o.steps / (m->steps ? m->steps : d.steps);
    double pretrain = (double)given.pretrain_steps / d.pretrain_steps;
    if (o.quick) { pretrain /= 100; }
    return m->work * (m->method == BASE ? pretrain : steps) * o.prompts / d.prompts + 0.1;
}

static void add_up_work(app *a) {
    int i, seed;
    for (i = 0; i < N_ARMS; i++) {
        for (seed = given.first_seed; seed < given.first_seed + given.seeds; seed++) {
            if (!wanted(&arms[i])) { continue; }
            a->whole += work_of(&arms[i]);
            if (tt_file_exists(result_path(a, seed, arms[i].name))) { a->done += work_of(&arms[i]); }
        }
    }
    whole_begin(a);
}

static tt_status run_arm(app *a, const arm *m) {
    for (a->seed = given.first_seed; a->seed < given.first_seed + given.seeds; a->seed++) {
        if (tt_file_exists(result_path(a, a->seed, m->name))) { continue; }
        a->o = arm_options(m);
        a->part = work_of(m);
        CHECK(run_job(a, m));
        a->done += work_of(m);
        a->part = 0;
        if (stop_requested) { return interrupted(a, "the study"); }
    }
    return TT_OK;
}

/* Has an earlier start made this? Its name, that of results.jsonl if nothing is there. */
static void find_made(app *a, char *made) {
    int i, seed;
    snprintf(made, PATH_SIZE, "%s", path_of(a->o.out, "results.jsonl"));
    for (i = 0; i < N_ARMS; i++) {
        for (seed = given.first_seed; seed < given.first_seed + given.seeds; seed++) {
            if (tt_file_exists(made)) { return; }
            snprintf(made, PATH_SIZE, "%s", result_path(a, seed, arms[i].name));
        }
    }
}

/* What the numbers depend on beside the table of arms must not change between two starts. */
static tt_status settle(app *a) {
    static const char without[] = "--seeds,--out,--only,--threads";
    tt_text now = new_text(a);
    char made[PATH_SIZE];
    int goes_on = 1;
    tt_status status;
    find_made(a, made);
    status = describe_settings(a->ctx, "study", option_list, N_OPTIONS, without, "", &now);
    if (status == TT_OK) { status = check_settings(a->ctx, a->o.out, &now, made, &goes_on); }
    if (status == TT_OK && !goes_on) { status = write_settings(a->ctx, a->o.out, &now); }
    tt_text_free(&now);
    return status;
}

#include "study_report.h"

static tt_status run(app *a) {
    int i;
    a->resumes_itself = 1;
    CHECK(settle(a));
    add_up_work(a);
    for (i = 0; i < N_ARMS; i++) {
        if (!wanted(&arms[i])) { continue; }
        CHECK(run_arm(a, &arms[i]));
        CHECK(write_study(a));
    }
    return TT_OK;
}

int main(int argc, char **argv) {
    app a;
    memset(&a, 0, sizeof a);
    parallel_begin(&argc, &argv);
    given = default_options();
    given.seeds = 5;
    given.out = "runs/study";
    options_read(argc, argv, "the paper's table and ablations over several seeds", option_list, N_OPTIONS);
    check_only();
    return experiment_main(&a, &given, "study", run);
}
