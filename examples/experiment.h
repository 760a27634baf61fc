/* experiment.h - what thinktune.c and study.c share: a small base pretrained on a task of the library, the
 * gate that tells whether it can teach, students trained from it with or without a teacher, and their
 * evaluation alone. All of it is a function of options and seed, may be killed at any time, and goes on from
 * its last checkpoint with the same bits. */
#ifndef EXPERIMENT_H
#define EXPERIMENT_H
#include "../thinktuning.h"
#include "tasks.h"
#include "feedback.h"
#include "evaluate.h"
#include "run.h"
#include <signal.h>

enum { MAX_ARMS = 16, MAX_SEEDS = 100, SHOWN = 6 };

static volatile sig_atomic_t stop_requested;
static void on_signal(int number) {
    (void)number;
    stop_requested = 1;
}

/* ---- options ---- */
typedef struct options {
    int seeds, first_seed, steps, pretrain_steps, pretrain_tokens, layers, hidden, heads, inner, context;
    int prompts, generations, length, iterations, micro_batch, questions, gate_questions, teacher_length;
    int threads, gradient_parts, quick, resume;
    int chat, close_tags, lora_rank, map, hold_out, keep_best, abort_patience, share_prompts, schedule_steps;
    double pretrain_lr, lr, weight_decay, clip, temperature, beta;
    double epsilon_low, epsilon_high, dual_clip, entropy_coef;
    double init_pct, min_pct, off_eps;
    double reads;                 /* share of documents in which the student reads; 0 = none     */
    /* Share of pretraining after which no notes by others are read, 0 = to the end: a base that has half
     * forgotten them teaches as before, but hardly ends a reflection of its own rightly (low coherence). */
    double notes_until;
    const char *out, *task, *arms, *aas, *mask, *schedule;
    const char *model, *data, *prompt, *end_token, *examples, *on_long;
    const char *system, *few_shot, *prefill, *worked, *shift, *separator;
    const char *arm_lr;           /* "grpo=1e-4,sft=1e-5": rates of arms that differ from lr */
} options;

static options default_options(void) {
    options o;
    memset(&o, 0, sizeof o);
    o.seeds = o.first_seed = 1;
    o.steps = 50;
    o.pretrain_steps = 10000;
    o.pretrain_tokens = 500;
    o.layers = 3;
    o.hidden = 96;
    o.heads = 3;
    o.inner = 256;
    o.context = 320;
    o.prompts = 16;
    o.generations = 8;
    o.length = 128;
    o.iterations = 1;
    o.micro_batch = 8192;
    o.questions = 1024;
    o.gate_questions = 512;
    o.teacher_length = 160;
    o.pretrain_lr = 4e-3;
    o.lr = 2e-4;
    o.weight_decay = 0.01;
    o.clip = 1;
    o.temperature = 1;
    o.epsilon_low = o.epsilon_high = 0.2;
    o.dual_clip = 3;
    o.init_pct = 0.25;
    o.min_pct = 0.01;
    o.off_eps = 0.05;
    o.out = "runs/demo";
    o.task = "signs";
    o.arms = "grpo,thinktune";
    o.aas = "released";
    o.mask = "whole";
    o.schedule = "linear";
    o.prompt = "Question: {question}\nAnswer:";
    o.on_long = "skip";
    o.separator = "\n\n";
    return o;
}

/* Its own in "grpo=1e-4,sft=1e-5", else that of all. */
static double learning_rate_of(const options *o, const char *method) {
    size_t size = strlen(method);
    const char *at = o->arm_lr;
    while (at && *at) {
        if (strncmp(at, method, size) == 0 && at[size] == '=') { return strtod(at + size + 1, NULL); }
        at += strcspn(at, ",");
        at += *at == ',';
    }
    return o->lr;
}

#define TASK_WORDS "signs,countdown,arithmetic,guess"
#define AAS_WORDS "released,formula,luffy,off"
#define SCHEDULE_WORDS "linear,constant,cosine,exp"

/* ---- the run ---- */
typedef struct app {
    options o;
    tt_context *ctx;
    tt_text settings;             /* all that the results depend on, as text */
    tt_signs *signs;              /* of this seed, with the task signs       */
    tt_puzzles *puzzles;          /* with the other tasks                    */
    tt_jsonl *data, *shift;       /* with --data, --shift                    */
    tt_text prompt;               /* with --data: as the model's chat wants it; and those of the teacher */
    tt_text teacher_system, teacher_example, teacher_prompt;
    tt_task task;
    tt_tokenizer *tokenizer;
    tt_model *base;
    tt_reducer *reducer;          /* of pretraining                          */
    int seed, n_arms, terminal;
    char arms[MAX_ARMS][16];
    double begin, shown;          /* clock of the phase and of its last line */
    int first_step;
    double stop_tokens;           /* an arm ends once so many tokens are sampled; 0 = by its steps alone */
    double whole, done, part;     /* work of all jobs, of those that are done, of this one; see time_left */
    double whole_begin, whole_from, base_work;
    int resumes_itself;           /* a study: the same command goes on       */
    int skipped;                  /* updates left out, in a row              */
    int n_lines;                  /* of metrics.jsonl, by the arms so far    */
    double sampled;               /* tokens of the last arm sft              */
    tt_model *follower;           /* a teacher that follows the student after each step; NULL = none */
    double follower_decay;        /* 0 = 0.99                                                        */
    tt_feedback_setup feedback;   /* of an arm of feedback.h                                         */
    /* after each step, on rank 0; NULL = none */
    tt_status (*on_step)(struct app *a, const char *method, const tt_trainer *trainer);
} app;

static tt_text new_text(app *a) {
    tt_text text;
    memset(&text, 0, sizeof text);
    text.ctx = a->ctx;
    return text;
}

static tt_ids new_ids(app *a) {
    tt_ids ids;
    memset(&ids, 0, sizeof ids);
    ids.ctx = a->ctx;
    return ids;
}

/* ---- live progress: one line, rewritten on a terminal, else a new line now and then ---- */
static void progress_begin(app *a, int first_step) {
    a->begin = tt_clock();
    a->shown = -1e9;
    a->first_step = first_step;
}

/* Work is counted in seconds of a job on two quiet cores; the pace of this start corrects them, the less the
 * fewer are done. */
static double time_left(const app *a, double share) {
    enum { EXPECTED = 5 };
    double worked = a->done + a->part * share - a->whole_from, left = a->whole - a->whole_from - worked;
    double elapsed = tt_clock() - a->whole_begin;
    return left * ((elapsed > 0 ? elapsed : 0) + EXPECTED) / (worked + EXPECTED);
}

/* Of this phase alone, by its pace since this start. */
static double phase_left(const app *a, int step, int total, double elapsed) {
    return step > a->first_step ? elapsed / (step - a->first_step) * (total - step) : 0;
}

static void whole_begin(app *a) {
    a->whole_begin = tt_clock();
    a->whole_from = a->done;
    if (a->done < a->whole) {
        const char *time = clock_text(a->whole - a->done);
        say("expected time of the whole run: %s, as two quiet cores have it\n", time);
    }
}

/* What is left is that of the whole run, with all its seeds and arms, where its work is known, and of this
 * phase elsewhere. */
static void progress(app *a, const char *phase, int step, int total, double tokens, const char *format, ...) {
    double elapsed = tt_clock() - a->begin, left;
    char head[120], figures[160], tail[40], line[400];
    int n;
    va_list list;
    if (!is_due(&a->shown, a->terminal ? 0.1 : 10) && step < total) { return; }
    va_start(list, format);
    n = vsnprintf(figures, sizeof figures, format, list);
    va_end(list);
    if (n >= 0 && n < (int)sizeof figures) {
        double pace = elapsed > 0 ? tokens / elapsed : 0;
        snprintf(figures + n, sizeof figures - (size_t)n, "  %.0f tokens/s", pace);
    }
    left = a->whole > 0 ? time_left(a, (double)step / total) : phase_left(a, step, total, elapsed);
    snprintf(head, sizeof head, "seed %d  %-9s %d/%d", a->seed, phase, step, total);
    snprintf(tail, sizeof tail, "%s left", clock_text(left));
    fit_line(line, sizeof line, head, figures, tail, terminal_width() - a->terminal);
    printf("%s%s%s", a->terminal ? "\r" : "", line, a->terminal ? "\033[K" : "\n");
    if (a->terminal && step >= total) { printf("\n"); }
    fflush(stdout);
}

static tt_status interrupted(app *a, const char *what) {
    const char *how = a->resumes_itself ? "" : " and --resume";
    return tt_fail(a->ctx, TT_ERR_STOP, "stopped during %s; go on with the same command%s", what, how);
}

/* ---- pretraining ---- */
typedef struct pack { tt_ids tokens, offsets; tt_text mask; } pack;

/* Document `index` of this seed; at: where pretraining stands, 0 to 1. What is learnt begins at `from`. */
static tt_status write_document(app *a, uint64_t index, double at, tt_text *text, size_t *from) {
    return a->signs ? tt_signs_document(a->signs, index, at, text, from)
                    : tt_puzzles_document(a->puzzles, index, at, text, from);
}

/* Notes begin with the name of their author. */
static int is_note(const tt_text *text) {
    return strncmp(text->data, "<user>", 6) != 0 && strncmp(text->data, "<mentor>", 8) != 0;
}

/* Appends tokens whose bytes of the mask are `learn`. */
static tt_status pack_text(app *a, pack *p, const char *text, size_t size, char learn) {
    CHECK(tt_encode(a->tokenizer, text, size, TT_SPECIAL_PARSE, &p->tokens));
    while (p->mask.size < p->tokens.size) { CHECK(tt_text_append(&p->mask, &learn, 1)); }
    return TT_OK;
}

static tt_status pack_document(app *a, pack *p, uint64_t index, double at, tt_text *text) {
    size_t from = 0;
    int32_t end;
    text->size = 0;
    CHECK(write_document(a, index, at, text, &from));
    if (a->o.notes_until > 0 && at > a->o.notes_until && is_note(text)) { return TT_OK; }
    CHECK(pack_text(a, p, text->data, from, 0));
    CHECK(pack_text(a, p, text->data + from, text->size - from, 1));
    end = (int32_t)p->tokens.size;
    return tt_ids_append(&p->offsets, &end, 1);
}

/* Documents until the step has its tokens: a pure function of (seed, step). */
static tt_status pack_step(app *a, pack *p, int step) {
    tt_text text = new_text(a);
    int32_t zero = 0;
    uint64_t index = (uint64_t)step << 20;
    tt_status status;
    p->tokens.size = p->offsets.size = p->mask.size = 0;
    status = tt_ids_append(&p->offsets, &zero, 1);
    while (status == TT_OK && p->tokens.size < (size_t)a->o.pretrain_tokens) {
        status = pack_document(a, p, index++, (double)step / a->o.pretrain_steps, &text);
    }
    tt_text_free(&text);
    return status;
}

/* Documents [begin, end) of the pack: their share of the mean negative log-likelihood of all n_targets. */
static tt_status pretrain_part(app *a, const pack *p, int begin, int end, int n_targets, double *loss_out) {
    tt_batch_desc desc = TT_INIT;
    tt_batch *batch;
    tt_tensor *loss;
    tt_ids offsets = new_ids(a);
    int32_t first = p->offsets.data[begin], next;
    tt_status status = TT_OK;
    int i;
    for (i = begin; i <= end && status == TT_OK; i++) {
        next = p->offsets.data[i] - first;
        status = tt_ids_append(&offsets, &next, 1);
    }
    desc.n_sequences = end - begin;
    desc.offsets = offsets.data;
    desc.tokens = p->tokens.data + first;
    desc.mask = (const unsigned char *)p->mask.data + first;
    batch = status == TT_OK ? tt_batch_create(a->ctx, &desc) : NULL;
    loss = tt_neg(a->ctx, tt_mean(a->ctx, tt_model_logprobs(a->base, batch, 1, NULL)));
    if (batch && batch->n_targets != n_targets) {
        loss = tt_scale(a->ctx, loss, (float)batch->n_targets / (float)n_targets);
    }
    tt_ids_free(&offsets);
    CHECK(status);
    CHECK(tt_backward(a->ctx, loss));
    *loss_out += tt_item(loss);
    tt_step_reset(a->ctx);
    return TT_OK;
}

/* Gradients of the mean over the pack; each process has some parts of the documents, one process all. */
static tt_status pretrain_backward(app *a, const pack *p, double *loss_out) {
    const tt_reducer_desc *d = tt_reducer_desc_get(a->reducer);
    int own = d->n_parts / d->world_size, n_targets = 0, part;
    long long n = (long long)p->offsets.size - 1;
    size_t i;
    *loss_out = 0;
    /* The first token of a document is never one of them. */
    for (i = 0; i < p->mask.size; i++) { n_targets += p->mask.data[i] != 0; }
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = (int)(n * part / d->n_parts), end = (int)(n * (part + 1) / d->n_parts);
        if (begin < end) { CHECK(pretrain_part(a, p, begin, end, n_targets, loss_out)); }
        CHECK(tt_reducer_add(a->reducer));
    }
    *loss_out = parallel_add(*loss_out);
    return tt_reducer_sum(a->reducer);
}

/* Mean negative log-likelihood of what follows the question, and one update. */
static tt_status pretrain_step(app *a, tt_optimizer *optimizer, pack *p, int step, double *loss_out) {
    tt_schedule schedule = TT_INIT;
    CHECK(pack_step(a, p, step));
    schedule.type = TT_LINEAR;
    schedule.lr = (float)a->o.pretrain_lr;
    schedule.total_steps = a->o.pretrain_steps;
    schedule.warmup_steps = a->o.pretrain_steps < 1000 ? a->o.pretrain_steps / 10 : 100;
    CHECK(pretrain_backward(a, p, loss_out));
    return take_update(a->ctx, optimizer, tt_learning_rate(&schedule, step), step, &a->skipped);
}

static tt_status pretrain_resume(app *a, tt_optimizer *optimizer, const char *state, int *step) {
    tt_text json = new_text(a);
    tt_json *root;
    tt_status status;
    if (!tt_file_exists(state)) { return TT_OK; }
    status = tt_optimizer_load(optimizer, state, &json, NULL, 0);
    root = status == TT_OK ? tt_json_parse(a->ctx, json.data, json.size) : NULL;
    if (status == TT_OK && !root) { status = tt_error_status(a->ctx); }
    if (status == TT_OK) { status = state_count(a->ctx, state, root, "step", a->o.pretrain_steps, step); }
    tt_json_free(a->ctx, root);
    tt_text_free(&json);
    return status;
}

static tt_status pretrain_loop(app *a, tt_optimizer *optimizer, pack *p, const char *state) {
    int step = 0, total = a->o.pretrain_steps;
    double loss = 0, tokens = 0, saved = tt_clock();
    char json[64];
    CHECK(pretrain_resume(a, optimizer, state, &step));
    for (progress_begin(a, step); step < total; ) {
        int stop;
        CHECK(pretrain_step(a, optimizer, p, step++, &loss));
        stop = parallel_any(stop_requested);
        tokens += (double)p->tokens.size;
        progress(a, "pretrain", step, total, tokens, "loss %.3f", loss);
        if (!stop && step < total && !is_due(&saved, 10)) { continue; }
        if (step == total) { CHECK(check_updates(a->ctx, a->skipped)); }
        snprintf(json, sizeof json, "{\"step\":%d}", step);
        if (parallel_rank == 0 && a->skipped == 0) {
            CHECK(tt_optimizer_save(optimizer, state, json, NULL, 0));
        }
        saved = tt_clock();
        if (stop && step < total) { return interrupted(a, "pretraining"); }
    }
    return TT_OK;
}

static tt_model *new_base(app *a) {
    tt_model_config config = TT_INIT;
    config.vocab_size = tt_vocab_size(a->tokenizer);
    config.hidden_size = a->o.hidden;
    config.num_hidden_layers = a->o.layers;
    config.num_attention_heads = a->o.heads;
    config.intermediate_size = a->o.inner;
    config.max_position_embeddings = a->o.context;
    config.bos_token_id = -1;
    config.eos_token_id = tt_token_id(a->tokenizer, "<end>");
    return tt_model_create(a->ctx, &config, (uint64_t)a->seed);
}

static tt_status pretrain(app *a, const char *dir) {
    tt_adamw_desc adamw = TT_INIT;
    tt_optimizer *optimizer;
    pack p;
    char state[PATH_SIZE];
    tt_status status = TT_ERR_MEM;
    a->tokenizer = a->signs ? tt_signs_tokenizer(a->signs) : tt_puzzles_tokenizer(a->puzzles);
    if (!a->tokenizer) { return tt_error_status(a->ctx); }
    adamw.beta2 = 0.98f;
    adamw.weight_decay = 0.01f;
    adamw.max_grad_norm = 1;
    a->base = new_base(a);
    optimizer = a->base ? tt_adamw_create(a->base, &adamw) : NULL;
    a->reducer = optimizer ? parallel_reducer(a->ctx, a->base, a->o.gradient_parts) : NULL;
    p.tokens = new_ids(a);
    p.offsets = new_ids(a);
    p.mask = new_text(a);
    snprintf(state, sizeof state, "%s", path_of(dir, "pretrain.state"));
    if (a->reducer) { status = pretrain_loop(a, optimizer, &p, state); }
    if (status == TT_OK && parallel_rank == 0) { status = tt_model_save(a->base, a->tokenizer, dir); }
    tt_ids_free(&p.tokens);
    tt_ids_free(&p.offsets);
    tt_text_free(&p.mask);
    tt_reducer_destroy(a->reducer);
    tt_optimizer_destroy(optimizer);
    return status;
}

/* What the base depends on, in words: its folder is found by their hash. */
static tt_status base_key(const app *a, tt_text *key) {
    const options *o = &a->o;
    CHECK(tt_text_format(key, "%s " TT_VERSION " seed %d layers %d hidden %d heads %d inner %d context %d",
                         o->task, a->seed, o->layers, o->hidden, o->heads, o->inner, o->context));
    CHECK(tt_text_format(key, " steps %d tokens %d lr %.9g",
                         o->pretrain_steps, o->pretrain_tokens, o->pretrain_lr));
    if (o->notes_until > 0) { CHECK(tt_text_format(key, " notes until %.9g", o->notes_until)); }
    if (o->reads > 0) { CHECK(tt_text_format(key, " reads %.9g", o->reads)); }
    if (o->gradient_parts) { CHECK(tt_text_format(key, " parts %d", o->gradient_parts)); }
    return TT_OK;
}

/* The file "complete" is written last: a folder without it holds a base that was interrupted. */
static tt_status pretrain_in(app *a, const char *dir, const char *complete, const tt_text *key) {
    tt_status status = pretrain(a, dir);
    if (status == TT_OK && parallel_rank == 0) {
        status = tt_file_write(a->ctx, complete, key->data, key->size);
    }
    tt_model_destroy(a->base);
    tt_tokenizer_destroy(a->tokenizer);
    a->base = NULL;
    a->tokenizer = NULL;
    CHECK(status);
    parallel_any(0);      /* until the file is there */
    return TT_OK;
}

static tt_status find_or_pretrain(app *a, const tt_text *key) {
    char dir[PATH_SIZE], complete[PATH_SIZE];
    unsigned long long hash = (unsigned long long)tt_hash(key->data, key->size, 0);
    strcpy(dir, path_of(a->o.out, "base-%d-%016llx", a->seed, hash));
    strcpy(complete, path_of(dir, "complete"));
    CHECK(tt_make_dirs(a->ctx, dir));
    if (parallel_any(!tt_file_exists(complete))) {
        CHECK(pretrain_in(a, dir, complete, key));
    } else {
        say("seed %d  base found in %s\n", a->seed, dir);
        a->whole_from += a->base_work;      /* it takes no time now */
    }
    /* Always from its folder: the first start and the second see one model. */
    a->base = tt_model_load(a->ctx, dir);
    a->tokenizer = a->base ? tt_tokenizer_load(a->ctx, path_of(dir, "tokenizer.json")) : NULL;
    return a->tokenizer ? TT_OK : tt_error_status(a->ctx);
}

static tt_status base_from_cache(app *a) {
    tt_text key = new_text(a);
    tt_status status = base_key(a, &key);
    if (status == TT_OK) { status = find_or_pretrain(a, &key); }
    tt_text_free(&key);
    return status;
}

/* Adapters leave their base as it is, so it may stay in its file, for base, teacher and students together.
 * But a run takes hours, and a file that is cut short meanwhile would end it: only if asked for. */
static tt_model *load_model(app *a) {
    int stays = a->o.lora_rank && a->o.map;
    return stays ? tt_model_map(a->ctx, a->o.model) : tt_model_load(a->ctx, a->o.model);
}

static tt_status base_from_directory(app *a) {
    a->base = load_model(a);
    a->tokenizer = a->base ? tt_tokenizer_load(a->ctx, path_of(a->o.model, "tokenizer.json")) : NULL;
    return a->tokenizer ? TT_OK : tt_error_status(a->ctx);
}

enum { MOST_TURNS = 64 };

/* A conversation in the chat template of the model, up to where the next answer begins; or just what is said,
 * with empty lines between. */
static tt_status render_turns(app *a, const tt_message *messages, int n, tt_text *out) {
    tt_chat_desc chat = TT_INIT;
    int i;
    out->ctx = a->ctx;
    for (i = 0; i < n && !a->o.chat; i++) {
        CHECK(tt_text_format(out, "%s%s", i ? "\n\n" : "", messages[i].content));
    }
    if (!a->o.chat) { return TT_OK; }
    chat.format = tt_model_chat_format(a->base);
    chat.tokenizer = a->tokenizer;
    chat.generation_prompt = 1;
    return chat.format ? tt_chat_render(a->ctx, &chat, messages, n, out) : tt_error_status(a->ctx);
}

/* Turns to be shown before each question: they lie in turns[0 .. *n), which the caller frees. */
static tt_status read_turns(app *a, tt_json_lines *lines, tt_json **turns, int *n) {
    static const char *const roles[] = {"user", "assistant"};
    for (;;) {
        const char *role = NULL, *content = NULL;
        tt_json *json;
        CHECK(tt_json_lines_next(lines, &json));
        if (!json) { break; }
        if (*n == MOST_TURNS) {
            tt_json_free(a->ctx, json);
            return tt_fail(a->ctx, TT_ERR_FILE, "--few-shot %s has more than %d turns", lines->name,
                           MOST_TURNS);
        }
        turns[(*n)++] = json;
        CHECK(tt_json_lines_text(lines, json, "role", 0, &role));
        CHECK(tt_json_lines_text(lines, json, "content", 0, &content));
        if (role && content && strcmp(role, roles[(*n - 1) % 2]) == 0) { continue; }
        return tt_fail(a->ctx, TT_ERR_FILE, "--few-shot %s, line %d: expected {\"role\": \"%s\", "
                       "\"content\": a text}", lines->name, lines->line, roles[(*n - 1) % 2]);
    }
    if (*n % 2 == 0) { return TT_OK; }
    return tt_fail(a->ctx, TT_ERR_FILE, "--few-shot %s ends with a turn of the user", lines->name);
}

/* The prompt of a question: system message, turns shown before it, the question, and how the response
 * begins. */
static tt_status render_prompt(app *a, const tt_json *const *turns, int n_turns) {
    tt_message messages[MOST_TURNS + 2];
    int n = 0, i;
    if (a->o.system) {
        messages[n].role = "system";
        messages[n++].content = a->o.system;
    }
    for (i = 0; i < n_turns; i++) {
        messages[n].role = tt_json_text(turns[i], "role", "");
        messages[n++].content = tt_json_text(turns[i], "content", "");
    }
    messages[n].role = "user";
    messages[n++].content = a->o.prompt;
    CHECK(render_turns(a, messages, n, &a->prompt));
    return a->o.prefill ? tt_text_format(&a->prompt, "%s", a->o.prefill) : TT_OK;
}

static tt_status open_prompt(app *a) {
    tt_json_lines lines = TT_INIT;
    tt_json *turns[MOST_TURNS] = {NULL};
    int n = 0, i;
    tt_status status = TT_OK;
    lines.ctx = a->ctx;
    if (a->o.few_shot) {
        status = tt_json_lines_open(&lines, a->o.few_shot);
        if (status == TT_OK) { status = read_turns(a, &lines, turns, &n); }
    }
    if (status == TT_OK) { status = render_prompt(a, (const tt_json *const *)turns, n); }
    for (i = 0; i < n; i++) { tt_json_free(a->ctx, turns[i]); }
    tt_json_lines_close(&lines);
    return status;
}

/* Most tokens of a prompt that leaves room for a response. */
static int prompt_room(const app *a) {
    return tt_model_config_get(a->base)->max_position_embeddings - a->o.length;
}

/* A question that leaves no room for a response is found here, not when it is drawn. */
static tt_status limit_prompts(app *a) {
    int positions = tt_model_config_get(a->base)->max_position_embeddings, room = prompt_room(a);
    int all = tt_jsonl_count(a->data, 0) + tt_jsonl_count(a->data, 1), left_out = 0;
    int skip = strcmp(a->o.on_long, "skip") == 0;
    if (room < 1) {
        return tt_fail(a->ctx, TT_ERR_ARG, "--max-length is %d, which leaves no room for a prompt in the "
                       "model's %d positions", a->o.length, positions);
    }
    CHECK(tt_jsonl_limit(a->data, a->tokenizer, a->prompt.data, room, skip ? &left_out : NULL));
    if (left_out > 0) {
        say("%d of %d questions are left out: their prompts are longer than %d tokens, the model's %d "
            "positions less --max-length %d\n", left_out, all, room, positions, a->o.length);
    }
    if (tt_jsonl_count(a->data, 0) < 1 || tt_jsonl_count(a->data, 1) < 1) {
        const char *what = tt_jsonl_count(a->data, 0) < 1 ? "train on" : "be held out";
        return tt_fail(a->ctx, TT_ERR_ARG, "--data %s: no question is left to %s", a->o.data, what);
    }
    return TT_OK;
}

/* The task's prompt, by the options as they are. */
static tt_status set_prompt(app *a) {
    a->prompt.size = 0;
    CHECK(open_prompt(a));
    a->task = tt_task_jsonl(a->data, a->prompt.data, a->o.end_token);
    return TT_OK;
}

static tt_status open_data(app *a) {
    a->data = tt_jsonl_load(a->ctx, a->o.data);
    if (!a->data) { return tt_error_status(a->ctx); }
    if (a->o.hold_out) { CHECK(tt_jsonl_hold_out(a->data, a->o.hold_out)); }
    CHECK(base_from_directory(a));
    CHECK(set_prompt(a));
    CHECK(limit_prompts(a));
    if (!a->o.shift) { return TT_OK; }
    a->shift = tt_jsonl_load(a->ctx, a->o.shift);
    if (!a->shift) { return tt_error_status(a->ctx); }
    CHECK(tt_jsonl_hold_out(a->shift, tt_jsonl_count(a->shift, 0) + tt_jsonl_count(a->shift, 1)));
    return tt_jsonl_limit(a->shift, a->tokenizer, a->prompt.data, prompt_room(a), NULL);
}

/* The task of this seed and the base to start from. */
static tt_status open_base(app *a) {
    tt_signs_desc signs = TT_INIT;
    tt_puzzles_desc puzzles = TT_INIT;
    signs.seed = puzzles.seed = (uint64_t)a->seed;
    signs.reads = a->o.reads;
    puzzles.kind = (tt_puzzle)find_word(TASK_WORDS, a->o.task, strlen(a->o.task));      /* 0 is signs */
    if (a->o.data) { return open_data(a); }
    if (puzzles.kind == 0) {
        a->signs = tt_signs_create(a->ctx, &signs);
        if (a->signs) { a->task = tt_task_signs(a->signs); }
    } else {
        puzzles.min_n = puzzles.max_n = 3;
        puzzles.max_result = 99;
        puzzles.operators = TT_PLUS | TT_MINUS | TT_TIMES;
        a->puzzles = tt_puzzles_create(a->ctx, &puzzles);
        if (a->puzzles) { a->task = tt_task_puzzles(a->puzzles, "<user>{question}<student>", "<end>"); }
    }
    return a->signs || a->puzzles ? base_from_cache(a) : tt_error_status(a->ctx);
}

static void close_base(app *a) {
    tt_model_destroy(a->base);
    tt_tokenizer_destroy(a->tokenizer);
    tt_jsonl_destroy(a->data);
    tt_jsonl_destroy(a->shift);
    tt_signs_destroy(a->signs);
    tt_puzzles_destroy(a->puzzles);
    tt_text_free(&a->prompt);
    tt_text_free(&a->teacher_system);
    tt_text_free(&a->teacher_example);
    tt_text_free(&a->teacher_prompt);
    a->base = NULL;
    a->tokenizer = NULL;
    a->data = a->shift = NULL;
    a->signs = NULL;
    a->puzzles = NULL;
}

/* ---- the teacher: a frozen copy of the base under another prompt ---- */
#define TEACHER_ASK(question, response) "Question:\n" question "\n\nResponse:\n" response
static const char instruction[] =
    "You read a question and a student's response, and write feedback in the student's own voice, "
    "in this form:\n"
    "<opinion>correct or incorrect</opinion> <reason>reflection in the first person</reason> "
    "<phrase>continuation that ends with the final answer</phrase>\n\n";
static const struct { const char *question, *response, *feedback; } worked_examples[] = {
    {"Tom has 3 bags of 4 apples. How many apples?", "3 x 4 = 12. #### 12",
     "<opinion>correct</opinion> <reason>Let me go over my steps: 3 bags with 4 each is 4 + 4 + 4 = 12, so "
     "it holds.</reason> <phrase>I stay with 12. #### 12</phrase>"},
    {"Ann had 10 coins and gave away 4. How many are left?", "10 + 4 = 14. #### 14",
     "<opinion>incorrect</opinion> <reason>Wait, she gave coins away, so there cannot be more than 10; I "
     "added where I must subtract.</reason> <phrase>10 - 4 = 6. #### 6</phrase>"},
    {"A pen costs 2 and a book 5. What do 2 pens and a book cost?", "2 + 5 = 7. #### 7",
     "<opinion>incorrect</opinion> <reason>What would a mentor say? Count each thing that is bought: two "
     "pens, not one.</reason> <phrase>2 x 2 + 5 = 9. #### 9</phrase>"},
    {"A bus has 20 seats, half are taken. How many are free?", "10. #### 10",
     "<opinion>correct</opinion> <reason>The answer is right, but I should have checked it: half of 20 is "
     "10, and 10 + 10 = 20.</reason> <phrase>So 10 are free. #### 10</phrase>"}
};
enum { N_WORKED_EXAMPLES = sizeof worked_examples / sizeof *worked_examples };

/* What stands between the texts of a conversation of three turns: before the user's, before the answer,
 * before the next turn of the user, before the answer that is asked for. Without a chat: empty lines. */
enum { N_BETWEEN = 4 };

static tt_status between_turns(app *a, tt_text *turns, const char **at, size_t *size) {
    static const tt_message marks[N_BETWEEN - 1] = {{"user", "{user}"}, {"assistant", "{feedback}"},
                                                    {"user", "{next}"}};
    const char *from, *mark;
    int i;
    CHECK(render_turns(a, marks, N_BETWEEN - 1, turns));
    for (from = turns->data, i = 0; i < N_BETWEEN - 1; i++) {
        mark = strstr(from, marks[i].content);
        if (!mark) {
            return tt_fail(a->ctx, TT_ERR_FILE, "the chat template leaves out a turn of the teacher's "
                           "examples");
        }
        at[i] = from;
        size[i] = (size_t)(mark - from);
        from = mark + strlen(marks[i].content);
    }
    at[i] = from;
    size[i] = strlen(from);
    return TT_OK;
}

/* Each worked example is a turn of its own and its feedback the model's answer to it; the instruction opens
 * the first turn. at, size: see between_turns. */
static tt_status write_teacher(app *a, const char *const *at, const size_t *size) {
    static const char ask[] = TEACHER_ASK("{question}", "{response}");
    const char *opening = a->o.examples ? "" : instruction;
    int n_examples = a->o.examples ? 0 : N_WORKED_EXAMPLES, k;
    int answer = (int)size[1], next = (int)size[2];
    CHECK(tt_text_format(&a->teacher_system, "%.*s%s", (int)size[0], at[0], opening));
    for (k = 0; k < n_examples; k++) {
        CHECK(tt_text_format(&a->teacher_system, TEACHER_ASK("%s", "%s") "%.*s%s%.*s",
                             worked_examples[k].question, worked_examples[k].response,
                             answer, at[1], worked_examples[k].feedback, next, at[2]));
    }
    CHECK(tt_text_format(&a->teacher_example, "%s%.*s{feedback}%.*s", ask, answer, at[1], next, at[2]));
    return tt_text_format(&a->teacher_prompt, "%s%.*s", ask, (int)size[3], at[3]);
}

static tt_status teacher_turns(app *a) {
    tt_text turns = new_text(a);
    const char *at[N_BETWEEN];
    size_t size[N_BETWEEN];
    tt_status status = between_turns(a, &turns, at, size);
    a->teacher_system.ctx = a->teacher_example.ctx = a->teacher_prompt.ctx = a->ctx;
    a->teacher_system.size = a->teacher_example.size = a->teacher_prompt.size = 0;
    if (status == TT_OK) { status = write_teacher(a, at, size); }
    tt_text_free(&turns);
    return status;
}

static tt_model_teacher *make_teacher(app *a, tt_model *frozen) {
    tt_teacher_prompt prompt = TT_INIT;
    prompt.max_new_tokens = a->o.teacher_length;
    if (a->data) {
        if (teacher_turns(a) != TT_OK) { return NULL; }
        prompt.system = a->teacher_system.data;
        prompt.prompt_template = a->teacher_prompt.data;
        prompt.examples_path = a->o.examples;
        prompt.example_template = a->teacher_example.data;
        prompt.stop_token = a->o.end_token;
        prompt.close_tags = a->o.close_tags;
    } else {
        prompt.prompt_template = TT_SIGNS_TEACHER_TEMPLATE;
        prompt.stop_token = TT_SIGNS_TEACHER_STOP;
    }
    return tt_model_teacher_create(frozen, a->tokenizer, &prompt);
}

/* ---- the gate: can this base teach, and would reward alone find reflection anyway? ---- */
/* Is this the right response to question `index` of a split? */
static tt_status assess(app *a, int split, uint64_t index, const int32_t *tokens, int n, int stopped,
                        int *right) {
    tt_prompts asked = TT_INIT;
    tt_text response = new_text(a);
    tt_reward_input in = TT_INIT;
    float reward = 0;
    tt_status status = tt_prompts_create(a->ctx, &a->task, a->tokenizer, 1, &asked);
    in.tokens = tokens;
    in.n_tokens = n;
    in.stopped = stopped;
    if (status == TT_OK) { status = tt_prompts_set(&asked, 0, split, index); }
    if (status == TT_OK) { status = tt_prompts_input(&asked, 0, &response, &in); }
    if (status == TT_OK) { status = a->task.reward(a->task.user, &in, &reward); }
    *right = reward > 0.5f;
    tt_text_free(&response);
    tt_prompts_free(&asked);
    return status;
}

/* Samples once from each of n prompts. The random numbers are those of (seed, id + i). */
static tt_status sample_prompts(app *a, tt_model *model, tt_request *requests, int n, uint64_t id,
                                uint64_t seed, tt_rollouts *out) {
    int32_t end = tt_token_id(a->tokenizer, a->task.end_token);
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_status status;
    int i;
    for (i = 0; i < n; i++) {
        requests[i].n = 1;
        requests[i].id = id + (uint64_t)i;
    }
    sampling.max_new_tokens = a->o.length;
    sampling.temperature = (float)a->o.temperature;
    sampling.seed = seed;
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    status = tt_generate(model, requests, n, &sampling, &completions);
    if (status == TT_OK) { status = tt_rollouts_create(a->ctx, requests, n, &completions, end, out); }
    tt_completions_free(&completions);
    return status;
}

/* A model's own attempts at questions first, first + 1, ... of a split, sampled as id, id + 1, ...; later
 * passes continue them. */
static tt_status attempt_questions(app *a, tt_model *model, int split, uint64_t first, int n, uint64_t id,
                                   uint64_t seed, tt_rollouts *attempts) {
    tt_prompts asked = TT_INIT;
    tt_status status = tt_prompts_create(a->ctx, &a->task, a->tokenizer, n, &asked);
    int i;
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tt_prompts_set(&asked, i, split, first + (uint64_t)i);
    }
    if (status == TT_OK) { status = sample_prompts(a, model, asked.requests, n, id, seed, attempts); }
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        status = tt_rollouts_question(attempts, i, tt_prompts_question(&asked, i));
    }
    tt_prompts_free(&asked);
    return status;
}

/* The teacher continues every attempt that has ended. */
static tt_status guide_all(app *a, const tt_teacher *teacher, tt_rollouts *attempts,
                           tt_think_metrics *metrics) {
    tt_think_config think = TT_INIT;
    tt_augment how = TT_INIT;
    think.init_pct = think.min_pct = 1;
    think.off_eps = -1;
    think.total_steps = 1;
    think.schedule = TT_THINK_CONSTANT;
    think.separator = a->o.separator;
    how.teacher = teacher;
    how.tokenizer = a->tokenizer;
    how.end_token = tt_token_id(a->tokenizer, a->task.end_token);
    how.max_completion_length = a->o.length;
    return tt_think_augment(attempts, &how, &think, metrics);
}

/* own: the attempts' accuracy; cut: how many of the guided; longest: see tt_think_metrics. */
typedef struct gate {
    double hit, own, rescue, spoil, said, cut, coherence, leak, leak_max;
    int guided, longest;
} gate;
/* What was found of one question; right: after the teacher's feedback, which only an attempt that ended gets;
 * said: not blank. n_cut, longest: see tt_think_metrics; of all questions of a rank, in its first row. */
typedef struct gate_finding {
    double was_right, guided, right, said, coherent, leak, n_cut, longest;
} gate_finding;

/* A rank's own questions of the gate, begin .. begin + attempts.n, and their rows. */
typedef struct gate_share { int begin; gate_finding *rows; tt_rollouts attempts; } gate_share;

/* Leak: the probability that an attempt holds any word that student documents never hold (the sum over its
 * positions; they are tiny). From such a word on, the base falls into the voice of its other documents. */
static double foreign_mass(const float *logits, int vocab, const char *known) {
    double top = (double)logits[0], sum = 0, mass = 0;
    int i;
    for (i = 1; i < vocab; i++) { top = (double)logits[i] > top ? (double)logits[i] : top; }
    for (i = 0; i < vocab; i++) {
        double e = exp((double)logits[i] - top);
        sum += e;
        if (!known[i]) { mass += e; }
    }
    return mass / sum;
}

/* Logits of the base at each token of an attempt, [tokens, vocabulary]; NULL after an error. */
static tt_tensor *attempt_logits(app *a, const tt_rollouts *attempts, int index) {
    tt_batch *batch;
    tt_tensor *hidden, *logits = NULL;
    tt_no_grad_begin(a->ctx);
    batch = tt_rollouts_batch(a->ctx, attempts, &index, 1);
    if (batch) {
        hidden = tt_model_forward(a->base, batch);
        hidden = tt_gather_rows(a->ctx, hidden, batch->target_rows, batch->n_targets);
        logits = tt_model_logits(a->base, hidden);
    }
    tt_no_grad_end(a->ctx);
    return logits;
}

static tt_status gate_leak_of(app *a, const tt_rollouts *attempts, int index, const char *known,
                              double *leak) {
    tt_tensor *logits = attempt_logits(a, attempts, index);
    float *values;
    size_t size, width;
    int row;
    tt_status status;
    if (!logits) { return tt_eval(a->ctx); }
    size = logits->size;
    width = (size_t)logits->shape[1];
    values = (float *)tt_alloc(a->ctx, size, sizeof *values);
    if (!values) { return TT_ERR_MEM; }
    status = tt_tensor_get(logits, values);
    for (*leak = 0, row = 0; row < logits->shape[0]; row++) {
        *leak += foreign_mass(values + (size_t)row * width, (int)width, known);
    }
    tt_free(a->ctx, values, size, sizeof *values);
    tt_step_reset(a->ctx);
    return status;
}

/* The words of what students say in their documents, which at the end of pretraining are all. */
static tt_status known_words(app *a, char *known) {
    tt_text text = new_text(a);
    tt_ids ids = new_ids(a);
    tt_status status = TT_OK;
    uint64_t i;
    size_t k, from;
    for (i = 0; i < 2000 && status == TT_OK; i++) {
        text.size = from = 0;
        status = write_document(a, i, 1, &text, &from);
        if (status != TT_OK) { break; }
        status = tt_encode(a->tokenizer, text.data + from, text.size - from, TT_SPECIAL_PARSE, &ids);
    }
    for (k = 0; k < ids.size; k++) { known[ids.data[k]] = 1; }
    tt_text_free(&text);
    tt_ids_free(&ids);
    return status;
}

static tt_status gate_leak(app *a, gate_share *own) {
    int vocab = tt_vocab_size(a->tokenizer), i;
    char *known = (char *)tt_alloc(a->ctx, (size_t)vocab, 1);
    tt_status status = known ? known_words(a, known) : TT_ERR_MEM;
    for (i = 0; i < own->attempts.n && status == TT_OK; i++) {
        status = gate_leak_of(a, &own->attempts, i, known, &own->rows[i].leak);
    }
    tt_free(a->ctx, known, (size_t)vocab, 1);
    return status;
}

/* The prompts of attempts that go on: each without its end, then the marker. The tokens are those of ids. */
static tt_status marked_prompts(app *a, const tt_rollouts *attempts, tt_request *requests, tt_ids *ids) {
    int32_t marker = tt_token_id(a->tokenizer, "\n\n");
    int i, at = 0;
    for (i = 0; i < attempts->n; i++) {
        const tt_rollout *r = &attempts->items[i];
        int without_end = r->prompt_length + r->response_length - (r->stopped ? 1 : 0);
        CHECK(tt_ids_append(ids, r->tokens, (size_t)without_end));
        CHECK(tt_ids_append(ids, &marker, 1));
        requests[i].prompt_length = without_end + 1;
    }
    for (i = 0; i < attempts->n; at += requests[i++].prompt_length) { requests[i].prompt = ids->data + at; }
    return TT_OK;
}

/* more: attempt i with what was said behind its marker, which is one response to question i. */
static tt_status judge_continued(app *a, gate_share *own, const tt_rollouts *more) {
    int i, right;
    for (i = 0; i < more->n; i++) {
        const tt_rollout *r = &more->items[i];
        int prompt = own->attempts.items[i].prompt_length, n = r->prompt_length + r->response_length - prompt;
        CHECK(assess(a, 1, (uint64_t)(own->begin + i), r->tokens + prompt, n, r->stopped, &right));
        own->rows[i].coherent = right;
    }
    return TT_OK;
}

/* Coherence: "\n\n" is put after each attempt and the student goes on by itself; share of right answers. */
static tt_status gate_coherence(app *a, gate_share *own) {
    int n = own->attempts.n;
    uint64_t id = (uint64_t)own->begin, seed = (uint64_t)a->seed + 1;
    tt_request *requests = (tt_request *)tt_alloc(a->ctx, (size_t)n, sizeof *requests);
    tt_ids ids = new_ids(a);
    tt_rollouts more = TT_INIT;
    tt_status status = requests ? marked_prompts(a, &own->attempts, requests, &ids) : TT_ERR_MEM;
    if (status == TT_OK) { status = sample_prompts(a, a->base, requests, n, id, seed, &more); }
    if (status == TT_OK) { status = judge_continued(a, own, &more); }
    tt_rollouts_free(&more);
    tt_ids_free(&ids);
    tt_free(a->ctx, requests, (size_t)n, sizeof *requests);
    return status;
}

static tt_status feedback_of(app *a, const tt_rollout *r, tt_text *out) {
    const int32_t *tokens = r->tokens + r->prompt_length + r->attempt_length;
    return tt_decode(a->tokenizer, tokens, (size_t)(r->response_length - r->attempt_length), 1, out);
}

/* ,"name":"text" */
static tt_status write_member(tt_text *json, const char *name, const char *text, size_t size) {
    CHECK(tt_text_format(json, ",\"%s\":", name));
    return tt_text_json(json, text, size);
}

static tt_status write_guided(app *a, const char *question, const tt_rollout *r, int right, tt_text *json) {
    tt_text attempt = new_text(a), feedback = new_text(a);
    const char *comma = json->data[json->size - 1] == '[' ? "" : ",";
    size_t length = (size_t)r->attempt_length;
    tt_status status = tt_decode(a->tokenizer, r->tokens + r->prompt_length, length, 1, &attempt);
    if (status == TT_OK) { status = feedback_of(a, r, &feedback); }
    if (status == TT_OK) { status = tt_text_format(json, "%s{\"right\":%d", comma, right); }
    if (status == TT_OK) { status = write_member(json, "question", question, strlen(question)); }
    if (status == TT_OK) { status = write_member(json, "attempt", attempt.data, attempt.size); }
    if (status == TT_OK) { status = write_member(json, "feedback", feedback.data, feedback.size); }
    if (status == TT_OK) { status = tt_text_append(json, "}", 1); }
    tt_text_free(&attempt);
    tt_text_free(&feedback);
    return status;
}

static tt_status gate_right(app *a, const gate_share *own, int i, double *out) {
    const tt_rollout *r = &own->attempts.items[i];
    const int32_t *response = r->tokens + r->prompt_length;
    int right;
    CHECK(assess(a, 1, (uint64_t)(own->begin + i), response, r->response_length, r->stopped, &right));
    *out = right;
    return TT_OK;
}

static tt_status gate_said(app *a, const tt_rollout *r, double *out) {
    tt_text text = new_text(a);
    tt_status status = feedback_of(a, r, &text);
    *out = status == TT_OK && text.size > 0 && strspn(text.data, " \t\r\n") < text.size;
    tt_text_free(&text);
    return status;
}

/* What became of the guided attempts; the first ones are kept as texts. */
static tt_status judge_guided(app *a, gate_share *own, tt_text *json) {
    int i, shown = 0;
    for (i = 0; i < own->attempts.n; i++) {
        const tt_rollout *r = &own->attempts.items[i];
        gate_finding *row = &own->rows[i];
        if (!r->guided) { continue; }
        row->guided = 1;
        CHECK(gate_right(a, own, i, &row->right));
        CHECK(gate_said(a, r, &row->said));
        if (shown++ >= SHOWN) { continue; }
        CHECK(write_guided(a, own->attempts.questions[i], r, row->right > 0, json));
    }
    return TT_OK;
}

/* The teacher continues every attempt. */
static tt_status gate_hit(app *a, gate_share *own, tt_text *json) {
    tt_model_teacher *model = make_teacher(a, a->base);
    tt_think_metrics metrics = TT_INIT;
    tt_teacher teacher;
    tt_status status = model ? TT_OK : tt_error_status(a->ctx);
    int i;
    for (i = 0; i < own->attempts.n && status == TT_OK; i++) {
        status = gate_right(a, own, i, &own->rows[i].was_right);
    }
    if (status == TT_OK) {
        teacher = tt_teacher_model(model);
        status = guide_all(a, &teacher, &own->attempts, &metrics);
        own->rows[0].n_cut = metrics.n_cut;
        own->rows[0].longest = metrics.longest_guided;
    }
    if (status == TT_OK) { status = judge_guided(a, own, json); }
    tt_model_teacher_destroy(model);
    return status;
}

static tt_status gate_of_share(app *a, gate_finding *rows, int begin, int n, tt_text *json) {
    gate_share own = TT_INIT;
    uint64_t first = (uint64_t)begin, seed = (uint64_t)a->seed;
    tt_status status = attempt_questions(a, a->base, 1, first, n, first, seed, &own.attempts);
    own.begin = begin;
    own.rows = rows + begin;
    if (status == TT_OK && !a->data) { status = gate_leak(a, &own); }
    if (status == TT_OK && !a->data) { status = gate_coherence(a, &own); }
    if (status == TT_OK) { status = gate_hit(a, &own, json); }
    tt_rollouts_free(&own.attempts);
    return status;
}

/* The rows of the other ranks. Each question is one rank's, so that the sums are copies. */
static tt_status gate_gather(app *a, gate_finding *rows) {
    size_t n = (size_t)a->o.gate_questions * sizeof *rows / sizeof(double);
    size_t ranks = (size_t)parallel_size, i, k;
    double *all = (double *)tt_alloc(a->ctx, n * ranks, sizeof *all), *sums = (double *)rows;
    tt_reducer *reducer = all ? parallel_reducer(a->ctx, a->base, a->o.gradient_parts) : NULL;
    tt_status status = reducer ? tt_reducer_gather(reducer, sums, (int)n, all) : tt_error_status(a->ctx);
    for (i = 0; i < n && status == TT_OK; i++) {
        for (sums[i] = 0, k = 0; k < ranks; k++) { sums[i] += all[k * n + i]; }
    }
    tt_reducer_destroy(reducer);
    tt_free(a->ctx, all, n * ranks, sizeof *all);
    return status;
}

/* hit = final answer right, rescue = of the wrong ones, spoil = of the right ones. */
static void gate_finish(const gate_finding *rows, int n_rows, gate *g) {
    double n = 0, hits = 0, rights = 0, rescued = 0, spoiled = 0, said = 0;
    int i;
    memset(g, 0, sizeof *g);
    for (i = 0; i < n_rows; i++) {
        const gate_finding *r = &rows[i];
        g->coherence += r->coherent / n_rows;
        g->leak += r->leak / n_rows;
        if (r->leak > g->leak_max) { g->leak_max = r->leak; }
        g->cut += r->n_cut;
        if (r->longest > g->longest) { g->longest = (int)r->longest; }
        n += r->guided;
        hits += r->guided * r->right;
        said += r->said;
        rights += r->guided * r->was_right;
        rescued += r->guided * r->right * (1 - r->was_right);
        spoiled += r->guided * r->was_right * (1 - r->right);
    }
    g->hit = n > 0 ? hits / n : 0;
    g->own = n > 0 ? rights / n : 0;
    g->said = n > 0 ? said / n : 0;
    g->guided = (int)n;
    g->rescue = n > rights ? rescued / (n - rights) : 0;
    g->spoil = rights > 0 ? spoiled / rights : 0;
}

/* Feedback that is cut teaches to begin what has no end, and earns nothing. */
static void warn_cut(const app *a, const char *when, double n_cut, double n_guided, int longest) {
    say("  warning: %s%.0f of %.0f guided responses are cut at --max-length %d and lose the end of their "
        "feedback: raise it to %d\n", when, n_cut, n_guided, a->o.length, longest);
}

/* The bounds of hit, coherence and leak were measured on small bases of the built-in tasks, and say nothing
 * of another model or task: there feedback has to be right more often than the student alone. */
static void warn_gate(const app *a, const gate *g) {
    if (a->data && g->hit <= g->own) {
        say("  warning: the teacher ends right in %.3f, no more than the student alone in %.3f: there is "
            "nothing to learn from it. Try worked --teacher-examples of smaller steps, or easier questions\n",
            g->hit, g->own);
    }
    if (a->data) { return; }
    if (g->hit < 0.7) {
        say("  warning: a hit below 0.7: feedback that is often wrong is punished, not learned\n");
    }
    if (g->coherence < 0.15) {
        say("  warning: coherence below 0.15: "
            "the student may learn to say the marker and nothing behind it\n");
    }
    if (g->leak > 1e-3) {
        say("  warning: leak above 1e-3: reward alone may find reflection by accident\n");
    }
}

static void say_gate(app *a, const gate *g) {
    char more[80];
    if (a->data) {
        snprintf(more, sizeof more, ", the student alone %.3f", g->own);
    } else {
        snprintf(more, sizeof more, ", coherence %.3f, leak %.1e (largest %.1e)",
                 g->coherence, g->leak, g->leak_max);
    }
    say("seed %d  gate: teacher's hit %.3f (rescues %.3f, spoils %.3f)%s\n",
        a->seed, g->hit, g->rescue, g->spoil, more);
    if (g->said < 0.9) {
        say("  warning: %.0f %% of the feedback is blank, without its tags: try other --teacher-examples, "
            "a longer --teacher-length%s\n",
            100 * (1 - g->said), a->data && !a->o.close_tags ? ", --close-tags" : "");
    }
    if (g->cut > 0) { warn_cut(a, "", g->cut, g->guided, g->longest); }
    warn_gate(a, g);
}

/* All ranks together; rank 0 has the first questions and their texts. */
static tt_status run_gate(app *a, gate *g, tt_text *json) {
    int64_t n = a->o.gate_questions;
    int begin = (int)(n * parallel_rank / parallel_size);
    int end = (int)(n * (parallel_rank + 1) / parallel_size);
    gate_finding *rows = (gate_finding *)tt_alloc(a->ctx, (size_t)n, sizeof *rows);
    tt_status status = TT_OK;
    if (!rows) { return TT_ERR_MEM; }
    if (end > begin) { status = gate_of_share(a, rows, begin, end - begin, json); }
    if (status == TT_OK) { status = gate_gather(a, rows); }
    if (status == TT_OK) { gate_finish(rows, (int)n, g); }
    tt_free(a->ctx, rows, (size_t)n, sizeof *rows);
    if (status == TT_OK) { say_gate(a, g); }
    return status;
}

/* ---- evaluation: the student alone; one result.json per seed and method ---- */
typedef struct collector { app *a; tt_text *json; int n; tt_status status; } collector;

/* As many tokens as a response may have, and no end token among them: it was cut. */
static tt_status is_cut(app *a, const char *response, int *cut) {
    tt_ids ids = new_ids(a);
    tt_status status = tt_encode(a->tokenizer, response, strlen(response), TT_SPECIAL_TEXT, &ids);
    *cut = ids.size >= (size_t)a->o.length;
    tt_ids_free(&ids);
    return status;
}

static tt_status write_transcript(app *a, tt_text *json, const char *question, const char *response,
                                  const tt_outcome *outcome) {
    int cut;
    CHECK(is_cut(a, response, &cut));
    CHECK(tt_text_format(json, "{\"right\":%d,\"first_right\":%d,\"cut\":%d",
                         outcome->final_right, outcome->first_right, cut));
    CHECK(write_member(json, "question", question, strlen(question)));
    CHECK(write_member(json, "response", response, strlen(response)));
    return tt_text_append(json, "}", 1);
}

static void collect(void *user, const char *question, const char *response, const tt_outcome *outcome) {
    collector *c = (collector *)user;
    if (c->n >= SHOWN || c->status != TT_OK) { return; }
    if (c->n++ > 0) { c->status = tt_text_append(c->json, ",", 1); }
    if (c->status == TT_OK) { c->status = write_transcript(c->a, c->json, question, response, outcome); }
}

static tt_status write_evaluation(tt_text *json, const char *name, const tt_evaluation *e) {
    CHECK(tt_text_format(json, ",\"%s\":{\"accuracy\":%r,\"attempt_rate\":%r,\"first_accuracy\":%r",
                         name, e->accuracy, e->attempt_rate, e->first_accuracy));
    CHECK(tt_text_format(json, ",\"reflection_rate\":%r,\"works_first\":%r",
                         e->reflection_rate, e->behaviour[TT_WORKS_FIRST]));
    CHECK(tt_text_format(json, ",\"correction_rate\":%r,\"spoil_rate\":%r,\"mean_length\":%r",
                         e->correction_rate, e->spoil_rate, e->mean_length));
    return tt_text_format(json, ",\"stopped_rate\":%r,\"behaviour\":[%r,%r,%r,%r]}", e->stopped_rate,
                          e->behaviour[TT_SELF_AGREEMENT], e->behaviour[TT_SELF_CONFLICT],
                          e->behaviour[TT_SELF_CONSULTATION], e->behaviour[TT_SELF_CRITIQUE]);
}

/* Of an evaluation that write_evaluation has written: reflection that corrects. A marker without its meaning,
 * an empty "wait, check", is as frequent as a useful one, and does not count. */
static int reflects_and_corrects(const tt_json *evaluation) {
    return tt_json_number(evaluation, "reflection_rate", 0) > 0.5 &&
           tt_json_number(evaluation, "correction_rate", 0) > 0.3;
}

/* With --data also each question's verdict, for paired comparisons. */
static tt_status write_verdicts(app *a, const double *right, tt_text *json) {
    int i;
    if (!a->data) { return TT_OK; }
    CHECK(tt_text_format(json, ",\"right\":["));
    for (i = 0; i < a->o.questions; i++) { CHECK(tt_text_format(json, "%s%r", i ? "," : "", right[i])); }
    return tt_text_append(json, "]", 1);
}

static tt_status evaluate_by(app *a, tt_model *model, tt_reducer *reducer, double *right,
                             tt_evaluation *sampled, tt_evaluation *greedy, tt_text *json) {
    tt_evaluate_desc d = TT_INIT;
    collector c;
    c.a = a;
    c.json = json;
    c.n = 0;
    c.status = TT_OK;
    d.n_questions = a->o.questions;
    d.max_new_tokens = a->o.length;
    d.temperature = (float)a->o.temperature;
    d.seed = (uint64_t)a->seed;
    d.reducer = reducer;
    d.question_accuracy = right;
    CHECK(tt_evaluate(model, a->tokenizer, &a->task, &d, sampled));
    CHECK(write_verdicts(a, right, json));
    d.question_accuracy = NULL;
    CHECK(tt_text_format(json, ",\"transcripts\":["));
    d.greedy = 1;
    d.on_response = collect;
    d.user = &c;
    CHECK(tt_evaluate(model, a->tokenizer, &a->task, &d, greedy));
    CHECK(c.status);
    CHECK(tt_text_append(json, "]", 1));
    CHECK(write_evaluation(json, "sampled", sampled));
    return write_evaluation(json, "greedy", greedy);
}

/* The first n questions of another split 1: out of domain. */
static tt_status write_shift(app *a, tt_model *model, const tt_task *task, int n, tt_text *json) {
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation sampled, greedy;
    d.n_questions = n;
    d.max_new_tokens = a->o.length;
    d.temperature = (float)a->o.temperature;
    d.seed = (uint64_t)a->seed;
    CHECK(tt_evaluate(model, a->tokenizer, task, &d, &sampled));
    d.greedy = 1;
    CHECK(tt_evaluate(model, a->tokenizer, task, &d, &greedy));
    CHECK(write_evaluation(json, "shift", &sampled));
    return write_evaluation(json, "shift_greedy", &greedy);
}

static tt_status evaluate_shift_file(app *a, tt_model *model, tt_text *json) {
    tt_task task;
    if (!a->shift) { return TT_OK; }
    task = tt_task_jsonl(a->shift, a->prompt.data, a->o.end_token);
    return write_shift(a, model, &task, tt_jsonl_count(a->shift, 1), json);
}

/* All ranks together; rank 0 has the transcripts. */
static tt_status evaluate(app *a, tt_model *model, const char *method, tt_text *json) {
    size_t n = (size_t)a->o.questions;
    double *right = (double *)tt_alloc(a->ctx, n, sizeof *right);
    tt_reducer *reducer = right ? parallel_reducer(a->ctx, model, a->o.gradient_parts) : NULL;
    tt_evaluation sampled, greedy;
    tt_status status = reducer ? TT_OK : tt_error_status(a->ctx);
    if (reducer) { status = evaluate_by(a, model, reducer, right, &sampled, &greedy, json); }
    tt_reducer_destroy(reducer);
    tt_free(a->ctx, right, n, sizeof *right);
    CHECK(status);
    say("seed %d  %-9s alone: accuracy %.3f (greedy %.3f)  reflection %.3f  correction %.3f  spoil %.3f\n",
        a->seed, method, sampled.accuracy, greedy.accuracy, sampled.reflection_rate,
        sampled.correction_rate, sampled.spoil_rate);
    return evaluate_shift_file(a, model, json);
}

static const char *result_path(const app *a, int seed, const char *method) {
    return path_of(a->o.out, "seed-%d/%s/result.json", seed, method);
}

static tt_status write_gate(app *a, tt_text *json) {
    gate g;
    CHECK(tt_text_format(json, ",\"guided\":["));
    CHECK(run_gate(a, &g, json));
    CHECK(tt_text_format(json, "],\"gate\":{\"seed\":%d,\"teacher_hit\":%r,\"rescue_rate\":%r",
                         a->seed, g.hit, g.rescue));
    CHECK(tt_text_format(json, ",\"spoil_rate\":%r,\"said\":%r,\"cut\":%r", g.spoil, g.said, g.cut));
    return tt_text_format(json, ",\"coherence\":%r,\"leak\":%r,\"leak_max\":%r}",
                          g.coherence, g.leak, g.leak_max);
}

static tt_status read_json(app *a, const char *path, tt_json **out) {
    tt_text text = new_text(a);
    tt_status status = tt_file_read(a->ctx, path, &text);
    if (status == TT_OK) { *out = tt_json_parse(a->ctx, text.data, text.size); }
    tt_text_free(&text);
    return status == TT_OK && !*out ? tt_error_status(a->ctx) : status;
}

/* ---- training one arm ---- */
static tt_status open_to_append(app *a, const char *path, FILE **file) {
    CHECK(tt_file_writable(a->ctx, path));
    *file = fopen(path, "ab");
    return *file ? TT_OK : tt_fail(a->ctx, TT_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
}

/* Cuts a file of metrics back to its first n_lines and opens it for more: a line is on disk before the
 * checkpoint that counts it. */
static tt_status open_metrics(app *a, const char *path, int n_lines, FILE **file) {
    tt_text text = new_text(a);
    size_t at = 0;
    int lines = 0;
    tt_status status;
    if (parallel_rank > 0) { return TT_OK; }
    status = n_lines ? tt_file_read(a->ctx, path, &text) : TT_OK;
    while (lines < n_lines && at < text.size) { lines += text.data[at++] == '\n'; }
    if (status == TT_OK && lines < n_lines) {
        status = tt_fail(a->ctx, TT_ERR_FILE, "%s has %d lines, expected at least %d; start again without "
                         "--resume", path, lines, n_lines);
    }
    if (status == TT_OK) { status = tt_file_write(a->ctx, path, text.data ? text.data : "", at); }
    tt_text_free(&text);
    CHECK(status);
    return open_to_append(a, path, file);
}

/* What depends on the clock has a file of its own. */
static tt_status write_timings(app *a, FILE *file, const char *method, const tt_step_metrics *m,
                               tt_text *line) {
    CHECK(tt_text_format(line, "{\"seed\":%d,\"method\":\"%s\",\"step\":%d", a->seed, method, m->step));
    CHECK(tt_text_format(line, ",\"rollout_s\":%.4f,\"teacher_s\":%.4f,\"update_s\":%.4f,\"step_s\":%.4f}\n",
                         m->rollout_s, m->teacher_s, m->update_s, m->step_s));
    fputs(line->data, file);
    fflush(file);
    return TT_OK;
}

static int scores_feedback(const app *a) { return a->feedback.method && a->feedback.method->scores; }

/* The counts of the step become those of all ranks. */
static void sum_feedback(tt_feedback_setup *f) {
    double *const counts[] = {&f->n_scored, &f->n_no_context, &f->n_too_long, &f->teacher_tokens};
    int k;
    for (k = 0; k < 4; k++) { *counts[k] = parallel_add(*counts[k]); }
}

/* What an arm of feedback.h has scored in the step, and what it missed, goes before the closing brace. */
static tt_status add_feedback(const tt_feedback_setup *f, tt_text *line) {
    line->size--;
    CHECK(tt_text_format(line, ",\"feedback/scored\":%r,\"feedback/no_context\":%r,\"feedback/too_long\":%r",
                         f->n_scored, f->n_no_context, f->n_too_long));
    CHECK(tt_text_format(line, ",\"feedback/teacher_tokens\":%r}", f->teacher_tokens));
    return TT_OK;
}

static tt_status write_metrics(app *a, FILE *file, FILE *timings, const char *method,
                               const tt_step_metrics *metrics) {
    tt_text line = new_text(a);
    tt_step_metrics m = *metrics;
    tt_status status;
    if (parallel_rank > 0) { return TT_OK; }
    m.step_s = 0;      /* leaves the timings out */
    status = tt_metrics_json(&m, &line);
    if (status == TT_OK && scores_feedback(a)) { status = add_feedback(&a->feedback, &line); }
    if (status == TT_OK) {
        int n = fprintf(file, "{\"seed\":%d,\"method\":\"%s\",%s\n", a->seed, method, line.data + 1);
        if (n < 0 || fflush(file) != 0) {
            status = tt_fail(a->ctx, TT_ERR_IO, "metrics cannot be written: %s", strerror(errno));
        }
    }
    line.size = 0;
    if (timings && status == TT_OK) { status = write_timings(a, timings, method, metrics, &line); }
    tt_text_free(&line);
    return status;
}

static tt_trainer_desc arm_desc(app *a, tt_model *student, const char *method, const tt_teacher *teacher) {
    const options *o = &a->o;
    tt_trainer_desc d = TT_INIT;
    const char *aas = find_word(AAS_WORDS, method, strlen(method)) >= 0 ? method : o->aas;
    d.model = student;
    d.tokenizer = a->tokenizer;
    d.task = &a->task;
    d.teacher = teacher;
    d.seed = (uint64_t)a->seed;
    d.prompts_per_step = o->prompts;
    d.allreduce = parallel_hook;
    d.allreduce_user = parallel_user(a->ctx, o->gradient_parts > 0);
    d.rank = parallel_rank;
    d.world_size = parallel_size;
    d.gradient_parts = o->gradient_parts;
    d.grpo.num_generations = o->generations;
    d.grpo.max_completion_length = o->length;
    d.grpo.num_iterations = o->iterations;
    d.grpo.micro_batch_tokens = o->micro_batch;
    d.grpo.share_prompts = o->share_prompts;
    d.grpo.temperature = (float)o->temperature;
    d.grpo.beta = (float)o->beta;
    d.grpo.epsilon_low = (float)o->epsilon_low;
    d.grpo.epsilon_high = (float)o->epsilon_high;
    d.grpo.dual_clip = (float)o->dual_clip;
    d.grpo.entropy_coef = (float)o->entropy_coef;
    if (teacher) { d.grpo.aas = (tt_aas)find_word(AAS_WORDS, aas, strlen(aas)); }
    d.think.init_pct = (float)o->init_pct;
    d.think.min_pct = (float)o->min_pct;
    d.think.off_eps = (float)o->off_eps;
    d.think.total_steps = o->schedule_steps ? o->schedule_steps : o->steps;
    d.think.seed = (uint64_t)a->seed;
    d.think.separator = o->separator;
    d.think.mask = strcmp(o->mask, "whole") == 0 ? TT_MASK_WHOLE : TT_MASK_APPENDED;
    d.think.schedule = (tt_think_schedule)find_word(SCHEDULE_WORDS, o->schedule, strlen(o->schedule));
    d.adamw.weight_decay = (float)o->weight_decay;
    d.adamw.max_grad_norm = (float)o->clip;
    d.schedule.lr = (float)learning_rate_of(o, method);
    d.abort_patience = o->abort_patience;
    return d;
}

/* ---- an arm of feedback.h ---- */
/* What the small base has learnt to read, for its task; what a chat model reads is TRL's. */
static void use_small_texts(const app *a, tt_feedback_setup *s) {
    if (a->o.data) { return; }
    s->refine = TT_SIGNS_READS_REFINE;
    s->reprompt_template = TT_SIGNS_READS_REPROMPT;
    s->solution_template = TT_SIGNS_READS_SOLUTION;
    s->feedback_template = TT_SIGNS_READS_FEEDBACK;
}

/* The method's settings into desc. Whose log-probs q are: of sdpo and srpo a moving average, which follows
 * with TRL's teacher_update_rate of 0.05; of opsd and opd the frozen base. */
static tt_status open_feedback(app *a, const char *method, tt_trainer_desc *desc) {
    int average = strcmp(method, "sdpo") == 0 || strcmp(method, "srpo") == 0;
    memset(&a->feedback, 0, sizeof a->feedback);
    use_small_texts(a, &a->feedback);
    desc->think.init_pct = 0;      /* one new answer a prompt, to the end */
    if (average) {
        a->follower = tt_model_copy(desc->model);
        if (!a->follower) { return tt_error_status(a->ctx); }
        a->follower_decay = 0.95;
    }
    a->feedback.teacher_model = average ? a->follower : a->base;
    return tt_feedback_apply(a->ctx, method, &a->feedback, desc);
}

static void close_feedback(app *a) {
    if (!a->feedback.method) { return; }
    tt_model_destroy(a->follower);
    a->follower = NULL;
    a->follower_decay = 0;
    memset(&a->feedback, 0, sizeof a->feedback);
}

typedef struct arm_run {
    const char *method;
    tt_trainer *trainer;
    tt_model *student;
    FILE *metrics, *timings;
    char state[PATH_SIZE];        /* its checkpoint, seed-SEED/METHOD/train.state            */
    int warned, cut_said, skipped;
    int without_signal;           /* steps in a row                                          */
    double guided, window, best;
    double tokens_before;         /* of the runs before this one; -1 = not known yet         */
    double saved, pause;          /* clock of the last checkpoint, seconds to the next       */
} arm_run;

static tt_status save_student(app *a, const tt_model *student, const char *dir) {
    return a->o.lora_rank ? tt_model_lora_save(student, dir) : tt_model_save(student, a->tokenizer, dir);
}

/* --keep-best n: the student as it was after the n steps with the highest mean reward of its own. */
static int best_so_far(const app *a, arm_run *arm, int step, double reward) {
    double mean;
    arm->window += reward;
    if (a->o.keep_best == 0 || step % a->o.keep_best != 0) { return 0; }
    mean = arm->window / a->o.keep_best;
    arm->window = 0;
    if (mean <= arm->best) { return 0; }
    arm->best = mean;
    return 1;
}

/* What the steps before an interruption said. */
static tt_status replay_best(app *a, arm_run *arm, const char *metrics, int n_lines) {
    tt_json_lines lines = TT_INIT;
    tt_json *json;
    int last = n_lines + tt_trainer_step_count(arm->trainer);
    tt_status status;
    lines.ctx = a->ctx;
    if (last == n_lines || !a->o.keep_best) { return TT_OK; }
    status = tt_json_lines_open(&lines, metrics);
    while (status == TT_OK && lines.line < last) {
        status = tt_json_lines_next(&lines, &json);
        if (!json) { break; }
        if (lines.line > n_lines) {
            best_so_far(a, arm, lines.line - n_lines, tt_json_number(json, "think/own_reward", 0));
        }
        tt_json_free(a->ctx, json);
    }
    tt_json_lines_close(&lines);
    return status;
}

/* Guided rewards that fall to nothing: the student has changed so much that feedback no longer fits. */
static void watch_guided(app *a, arm_run *arm, const tt_step_metrics *m) {
    char when[32];
    if (m->think.n_guided == 0) { return; }
    if (m->think.n_cut > 0 && !arm->cut_said) {
        arm->cut_said = 1;
        snprintf(when, sizeof when, "step %d: ", m->step);
        say("%s", a->terminal ? "\n" : "");
        warn_cut(a, when, m->think.n_cut, m->think.n_guided, m->think.longest_guided);
    }
    arm->guided = m->step == 0 ? m->think.guided_reward : 0.7 * arm->guided + 0.3 * m->think.guided_reward;
    if (m->step < 5 || arm->guided > 0.2 || arm->warned) { return; }
    arm->warned = 1;
    say("%s  warning: step %d: guided responses earn only %.2f on average; "
        "the marker may stay without its meaning\n", a->terminal ? "\n" : "", m->step, arm->guided);
}

/* Where all responses to each question earn the same, no step changes anything: three in a row are said, with
 * what they have in common. */
static void watch_signal(app *a, arm_run *arm, const tt_step_metrics *m) {
    const char *why = "the responses to each question earn the same";
    if (m->grpo.frac_reward_zero_std < 1) {
        arm->without_signal = 0;
        return;
    }
    if (++arm->without_signal != 3) { return; }
    if (m->grpo.reward >= 1) { why = "all responses are right: the questions are too easy"; }
    if (m->grpo.reward <= 0) {
        why = "all responses are wrong: the questions are too hard, or --lr is too high";
    }
    if (m->clipped_ratio >= 1) { why = "all responses are cut at --max-length"; }
    say("%s  warning: step %d: three steps in a row without a gradient: %s\n", a->terminal ? "\n" : "",
        m->step, why);
}

/* What the step did is said, and its student kept if it is the best so far. */
static tt_status report_step(app *a, arm_run *arm, const tt_step_metrics *m) {
    int step = tt_trainer_step_count(arm->trainer);
    if (arm->tokens_before < 0) {
        arm->tokens_before = m->num_tokens - m->rollout_tokens - m->think.teacher_tokens;
    }
    progress(a, arm->method, step, a->o.steps, m->num_tokens - arm->tokens_before,
             "own reward %.3f  reflection %.3f", m->think.own_reward, m->reflection_rate);
    arm->skipped = m->update_skipped > 0 ? arm->skipped + 1 : 0;
    CHECK(say_skipped(a->ctx, m->step, arm->skipped));
    watch_guided(a, arm, m);
    watch_signal(a, arm, m);
    if (!best_so_far(a, arm, step, m->think.own_reward) || parallel_rank > 0) { return TT_OK; }
    return save_student(a, arm->student, path_of(a->o.out, "seed-%d/%s/best", a->seed, arm->method));
}

/* One step. *stop: some rank was told to stop. */
static tt_status train_step(app *a, arm_run *arm, tt_step_metrics *m, int *stop) {
    tt_feedback_setup *f = &a->feedback;
    tt_status status;
    f->n_scored = f->n_no_context = f->n_too_long = f->teacher_tokens = 0;
    status = tt_trainer_step(arm->trainer, m);
    if (status != TT_OK && status != TT_ERR_STOP) { return status; }
    if (scores_feedback(a)) { sum_feedback(f); }
    if (a->follower) {
        float decay = a->follower_decay > 0 ? (float)a->follower_decay : 0.99f;
        CHECK(tt_teacher_follow(a->follower, arm->student, decay));
    }
    *stop = parallel_any(stop_requested);
    CHECK(write_metrics(a, arm->metrics, arm->timings, arm->method, m));
    CHECK(status);      /* --abort-patience: tt_error has the reason */
    if (a->on_step && parallel_rank == 0) { CHECK(a->on_step(a, arm->method, arm->trainer)); }
    return report_step(a, arm, m);
}

/* Checkpoints of large models follow each other more slowly: they take at most a twentieth of the time. */
static tt_status save_arm(arm_run *arm) {
    arm->saved = tt_clock();
    if (parallel_rank == 0) { CHECK(tt_trainer_save(arm->trainer, arm->state)); }
    if (20 * (tt_clock() - arm->saved) > arm->pause) { arm->pause = 20 * (tt_clock() - arm->saved); }
    arm->saved = tt_clock();
    return TT_OK;
}

static tt_status train_loop(app *a, arm_run *arm) {
    int total = a->o.steps, step = tt_trainer_step_count(arm->trainer), stop;
    arm->tokens_before = -1;
    arm->saved = tt_clock();
    arm->pause = 10;
    progress_begin(a, step);
    while (step < total) {
        tt_step_metrics m;
        CHECK(train_step(a, arm, &m, &stop));
        step = tt_trainer_step_count(arm->trainer);
        if (a->stop_tokens > 0 && m.num_tokens >= a->stop_tokens) { return TT_OK; }
        if (!stop && step < total && !is_due(&arm->saved, arm->pause)) { continue; }
        CHECK(save_arm(arm));
        if (stop && step < total) { return interrupted(a, arm->method); }
    }
    return TT_OK;
}

/* What of the follower moves with the student, to be saved beside it: list has room for all parameters. */
static tt_status follower_tensors(const app *a, const tt_model *student, tt_text *names, tt_named *list,
                                  int *n) {
    size_t at = 0;
    int i;
    for (i = *n = 0; i < tt_model_n_params(student); i++) {
        const tt_tensor *p = tt_model_param(student, i);
        if (!p->requires_grad) { continue; }
        CHECK(tt_text_format(names, "ema.%s", p->name));
        CHECK(tt_text_append(names, "", 1));
        list[(*n)++].tensor = tt_model_param(a->follower, i);
    }
    for (i = 0; i < *n; i++) {
        list[i].name = names->data + at;
        at += strlen(list[i].name) + 1;
    }
    return TT_OK;
}

/* The trainer where its checkpoint stands, and the files that its steps are written to. */
static tt_status open_arm(app *a, arm_run *arm, const tt_trainer_desc *desc, const char *metrics,
                          int n_lines) {
    int step;
    arm->trainer = tt_trainer_create(a->ctx, desc);
    if (!arm->trainer) { return tt_error_status(a->ctx); }
    if (parallel_any(a->o.resume && tt_file_exists(arm->state))) {
        CHECK(tt_trainer_load(arm->trainer, arm->state));
    }
    step = tt_trainer_step_count(arm->trainer);
    if (step > a->o.steps) {
        return tt_fail(a->ctx, TT_ERR_FILE, "%s: it is of step %d, the run ends with step %d",
                       arm->state, step, a->o.steps);
    }
    CHECK(replay_best(a, arm, metrics, n_lines));
    CHECK(open_metrics(a, metrics, n_lines + step, &arm->metrics));
    if (parallel_rank > 0) { return TT_OK; }
    return open_to_append(a, path_of(a->o.out, "timings.jsonl"), &arm->timings);
}

/* One arm: its metrics follow the first n_lines of the file. */
static tt_status train_arm_of(app *a, const char *method, const tt_trainer_desc *desc, const char *metrics,
                              int n_lines) {
    arm_run arm;
    tt_status status;
    memset(&arm, 0, sizeof arm);
    arm.method = method;
    arm.student = desc->model;
    arm.best = -HUGE_VAL;
    strcpy(arm.state, path_of(a->o.out, "seed-%d/%s/train.state", a->seed, method));
    status = open_arm(a, &arm, desc, metrics, n_lines);
    if (status == TT_OK) { status = train_loop(a, &arm); }
    if (arm.metrics) { fclose(arm.metrics); }
    if (arm.timings) { fclose(arm.timings); }
    tt_trainer_destroy(arm.trainer);
    return status;
}

static tt_status train_student(app *a, const char *method, const tt_trainer_desc *desc, const char *metrics,
                               int n_lines) {
    tt_trainer_desc d = *desc;
    tt_text names = new_text(a);
    size_t room = (size_t)tt_model_n_params(desc->model);
    tt_named *list = a->follower ? (tt_named *)tt_alloc(a->ctx, room, sizeof *list) : NULL;
    tt_status status = a->follower && !list ? TT_ERR_MEM : TT_OK;
    if (list) { status = follower_tensors(a, desc->model, &names, list, &d.n_also); }
    d.also = list;
    if (status == TT_OK) { status = train_arm_of(a, method, &d, metrics, n_lines); }
    tt_free(a->ctx, list, room, sizeof *list);
    tt_text_free(&names);
    return status;
}

/* A student that starts as the base: with weights of its own, or with adapters on it. */
static tt_model *new_student(app *a) {
    tt_lora_desc lora = TT_INIT;
    const tt_model_config *config = tt_model_config_get(a->base);
    tt_model *student = a->o.lora_rank ? load_model(a) : tt_model_create(a->ctx, config, 0);
    tt_status status;
    if (!student) { return NULL; }
    lora.rank = a->o.lora_rank;
    lora.seed = (uint64_t)a->seed;
    status = lora.rank ? tt_model_lora_add(student, &lora) : tt_model_assign(student, a->base);
    if (status == TT_OK) { return student; }
    tt_model_destroy(student);
    return NULL;
}

/* ---- SFT: the base's attempts, each continued by the teacher; the right ones are imitated ---- */
/* Gradients of -log p of attempts chosen[0..k), as their part of a mean over n_tokens. */
static tt_status imitate_part(app *a, tt_model *student, const tt_rollouts *attempts, const int *chosen,
                              int k, int n_tokens) {
    tt_batch *batch = tt_rollouts_batch(a->ctx, attempts, chosen, k);
    tt_tensor *loss = tt_neg(a->ctx, tt_mean(a->ctx, tt_model_logprobs(student, batch, 1, NULL)));
    tt_status status;
    if (batch && batch->n_targets != n_tokens) {
        loss = tt_scale(a->ctx, loss, (float)batch->n_targets / (float)n_tokens);
    }
    status = tt_backward(a->ctx, loss);
    tt_step_reset(a->ctx);
    return status;
}

/* One update from attempts chosen[0..k); none without any. A small base takes them at once. */
static tt_status imitate(app *a, tt_model *student, tt_optimizer *optimizer, const tt_rollouts *attempts,
                         const int *chosen, int k, double lr, int step) {
    int n_tokens = 0, begin, end, size, i;
    for (i = 0; i < k; i++) { n_tokens += attempts->items[chosen[i]].response_length; }
    for (begin = 0; begin < k; begin = end) {
        size = 0;
        for (end = begin; end < k; end++) {
            const tt_rollout *r = &attempts->items[chosen[end]];
            size += r->prompt_length + r->response_length;
            if (a->data && end > begin && size > a->o.micro_batch) { break; }
        }
        CHECK(imitate_part(a, student, attempts, chosen + begin, end - begin, n_tokens));
    }
    return k == 0 ? TT_OK : take_update(a->ctx, optimizer, (float)lr, step, &a->skipped);
}

/* Those that the teacher continued and that ended right: their places in chosen, *k of them. The attempts are
 * at questions first, first + 1, ... */
static tt_status choose_right(app *a, const tt_rollouts *attempts, uint64_t first, int *chosen, int *k) {
    int i, right;
    for (*k = i = 0; i < attempts->n; i++) {
        const tt_rollout *r = &attempts->items[i];
        const int32_t *response = r->tokens + r->prompt_length;
        CHECK(assess(a, 0, first + (uint64_t)i, response, r->response_length, r->stopped, &right));
        if (r->guided && right) { chosen[(*k)++] = i; }
    }
    return TT_OK;
}

static tt_status sft_step(app *a, tt_model *student, tt_optimizer *optimizer, const tt_teacher *teacher,
                          int step, double *tokens) {
    double lr = learning_rate_of(&a->o, "sft");
    int n = a->o.prompts * a->o.generations, i, k = 0;
    int *chosen = (int *)tt_alloc(a->ctx, (size_t)n, sizeof *chosen);
    uint64_t first = (uint64_t)step * (uint64_t)n, seed = tt_random((uint64_t)a->seed, 0, (uint64_t)step);
    tt_rollouts attempts = TT_INIT;
    tt_think_metrics metrics = TT_INIT;
    tt_status status = chosen ? TT_OK : TT_ERR_MEM;
    if (status == TT_OK) { status = attempt_questions(a, a->base, 0, first, n, 0, seed, &attempts); }
    for (i = 0; i < n && status == TT_OK; i++) { *tokens += attempts.items[i].response_length; }
    if (status == TT_OK) { status = guide_all(a, teacher, &attempts, &metrics); }
    *tokens += metrics.teacher_tokens;
    if (status == TT_OK) { status = choose_right(a, &attempts, first, chosen, &k); }
    if (status == TT_OK) {
        status = imitate(a, student, optimizer, &attempts, chosen, k, lr, step);
    }
    tt_rollouts_free(&attempts);
    tt_free(a->ctx, chosen, (size_t)n, sizeof *chosen);
    return status;
}

/* It starts again if it is interrupted. */
static tt_status train_sft(app *a, tt_model *student, const tt_teacher *teacher, double *tokens) {
    tt_adamw_desc adamw = TT_INIT;
    tt_optimizer *optimizer;
    tt_status status;
    int step = 0;
    adamw.weight_decay = (float)a->o.weight_decay;
    adamw.max_grad_norm = (float)a->o.clip;
    optimizer = tt_adamw_create(student, &adamw);
    status = optimizer ? TT_OK : tt_error_status(a->ctx);
    a->skipped = 0;
    for (progress_begin(a, 0); step < a->o.steps && status == TT_OK; ) {
        status = sft_step(a, student, optimizer, teacher, step++, tokens);
        progress(a, "sft", step, a->o.steps, *tokens, "");
        if (stop_requested && status == TT_OK) { status = interrupted(a, "sft"); }
    }
    if (status == TT_OK) { status = check_updates(a->ctx, a->skipped); }
    tt_optimizer_destroy(optimizer);
    return status;
}

/* From options to exit status: 0, 1 after an error, 130 if it was stopped. */
static int experiment_main(app *a, const options *o, const char *program, tt_status (*run)(app *a)) {
    tt_desc desc = TT_INIT;
    tt_status status;
    a->o = *o;
    signal(SIGINT, on_signal);
#ifdef SIGTERM
    signal(SIGTERM, on_signal);
#endif
    a->terminal = IS_TERMINAL();
    desc.n_threads = o->threads;
    a->ctx = program_context(program, &desc);
    say("%s: %d seed%s, %d threads, %s kernels, results in %s%s\n",
        program, o->seeds, o->seeds > 1 ? "s" : "", tt_threads(a->ctx), tt_kernel(a->ctx), o->out,
        o->quick ? " (quick: the numbers mean nothing)" : "");
    status = claim_for_rank_0(a->ctx, o->out);
    if (status == TT_OK) { status = run(a); }
    if (status != TT_OK) {
        fprintf(stderr, "%s%s: %s\n", a->terminal ? "\n" : "", program, tt_error(a->ctx));
    }
    tt_text_free(&a->settings);
    tt_destroy(a->ctx);
    /* Both come to all processes at the same step. */
    if (status == TT_OK || status == TT_ERR_STOP) { parallel_end(); }
    if (status == TT_OK) { check_output(program); }
    return status == TT_OK ? 0 : status == TT_ERR_STOP ? 130 : 1;
}
#endif
