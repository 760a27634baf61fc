/* thinktune.c - does feedback teach what reward alone does not? The whole experiment in one program.
 *
 *     make demo                                   (= build/thinktune --out runs/demo --seeds 1)
 *     build/thinktune --seeds 3 --arms grpo,thinktune,formula,off
 *     build/thinktune --model DIR --data FILE.jsonl --end-token "<|im_end|>"
 *
 * As build/thinktune-mpi (make mpi) it shares prompts and gradients among the processes of mpirun; process 0 measures and
 * writes.
 *
 * For each seed: pretrain a small base model on the task "signs" (put + or - before each digit so that the
 * sum is the target), measure it, check that it can teach (the gate), then train two students from that base
 * on the same prompts: plain GRPO, and ThinkTuning, where a frozen copy of the base reads some attempts and
 * continues them with feedback. In the end the students answer held-out questions alone.
 *
 * OUT gets summary.json, metrics.jsonl (one line per step), report.html, curves.svg, the base in base-SEED-KEY/
 * (found again by the next start) and each student as a Hugging Face directory in seed-SEED/METHOD/. All of
 * these are the same bytes whenever seeds and settings are the same, also after kill -9 and --resume; what
 * depends on the clock goes to timings.jsonl. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "parallel_mpi.h"
#include <signal.h>
#if defined(_WIN32)
#include <io.h>
#define IS_TERMINAL() _isatty(1)
#else
#define IS_TERMINAL() isatty(1)
#endif

#define CHECK(call) do { tt_status check_ = (call); if (check_ != TT_OK) { return check_; } } while (0)
enum { MAX_ARMS = 5, MAX_SEEDS = 100, SHOWN = 6 };

static volatile sig_atomic_t stop_requested;
static void on_signal(int number) { (void)number; stop_requested = 1; }

/* ---- options ---- */
typedef struct options {
    int seeds, first_seed, steps, pretrain_steps, pretrain_tokens, layers, hidden, heads, inner, context;
    int prompts, generations, length, iterations, questions, gate_questions, teacher_length, threads, gradient_parts, quick, resume, help;
    double pretrain_lr, lr, weight_decay, clip, temperature, beta, epsilon_low, epsilon_high, dual_clip, entropy_coef;
    double init_pct, min_pct, off_eps;
    const char *out, *arms, *aas, *mask, *schedule, *model, *data, *prompt, *end_token;
} options;

typedef struct option { const char *name; char type; size_t at; double low, high; const char *help; } option;
#define OPTION(name, type, field, low, high, help) {name, type, offsetof(options, field), low, high, help}
static const option option_list[] = {
    OPTION("--seeds", 'i', seeds, 1, MAX_SEEDS, "how many seeds; the table is mean +- sd over all of them"),
    OPTION("--first-seed", 'i', first_seed, 0, 1000000, "the first of them"),
    OPTION("--steps", 'i', steps, 1, 1e6, "RL steps of each arm"),
    OPTION("--pretrain-steps", 'i', pretrain_steps, 1, 1e7, "pretraining steps of the base"),
    OPTION("--out", 's', out, 0, 0, "folder of all results"),
    OPTION("--resume", 'f', resume, 0, 0, "go on where an interrupted run in --out stopped"),
    OPTION("--arms", 's', arms, 0, 0, "list of grpo, thinktune, formula, luffy, off"),
    OPTION("--aas", 's', aas, 0, 0, "shaping of the arm thinktune: released, formula, luffy, off"),
    OPTION("--quick", 'f', quick, 0, 0, "a few steps of everything, to see that it runs; numbers mean nothing"),
    OPTION("--threads", 'i', threads, 0, 1024, "0 = all; results do not depend on it"),
    OPTION("--gradient-parts", 'i', gradient_parts, 0, 65536, "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"),
    OPTION("--prompts", 'i', prompts, 1, 65536, "prompts per step"),
    OPTION("--num-generations", 'i', generations, 2, 1024, "responses per prompt"),
    OPTION("--max-length", 'i', length, 2, 1e6, "tokens of a response"),
    OPTION("--num-iterations", 'i', iterations, 1, 100, "updates per batch of rollouts"),
    OPTION("--lr", 'd', lr, 1e-12, 10, "learning rate of RL"),
    OPTION("--weight-decay", 'd', weight_decay, 0, 10, "of AdamW"),
    OPTION("--max-grad-norm", 'd', clip, 0, 1e6, "global gradient clip, 0 = off"),
    OPTION("--temperature", 'd', temperature, 1e-3, 100, "of sampling and of the trained log-probs"),
    OPTION("--beta", 'd', beta, 0, 100, "weight of the KL to the base"),
    OPTION("--epsilon-low", 'd', epsilon_low, 1e-6, 1, "PPO clip, lower side"),
    OPTION("--epsilon-high", 'd', epsilon_high, 1e-6, 10, "PPO clip, upper side"),
    OPTION("--dual-clip", 'd', dual_clip, -1, 100, "for negative advantages, -1 = off"),
    OPTION("--entropy-coef", 'd', entropy_coef, 0, 10, "entropy bonus"),
    OPTION("--init-pct", 'd', init_pct, 1e-6, 1, "share of responses that get feedback at step 0"),
    OPTION("--min-pct", 'd', min_pct, 1e-6, 1, "the share at a third of the steps"),
    OPTION("--off-eps", 'd', off_eps, -1, 1, "the teacher leaves at share <= off-eps + 0.01, -1 = never"),
    OPTION("--schedule", 's', schedule, 0, 0, "of that share: linear, constant, cosine, exp"),
    OPTION("--mask", 's', mask, 0, 0, "tokens that get the shaped loss: whole, appended"),
    OPTION("--questions", 'i', questions, 1, 1e6, "held-out questions of the final evaluation"),
    OPTION("--gate-questions", 'i', gate_questions, 1, 1e6, "held-out questions of the gate"),
    OPTION("--pretrain-lr", 'd', pretrain_lr, 1e-12, 10, "peak learning rate of pretraining"),
    OPTION("--pretrain-tokens", 'i', pretrain_tokens, 64, 1e6, "tokens of a pretraining step"),
    OPTION("--layers", 'i', layers, 1, 100, "of the base"),
    OPTION("--hidden", 'i', hidden, 8, 8192, "of the base"),
    OPTION("--heads", 'i', heads, 1, 256, "of the base"),
    OPTION("--inner", 'i', inner, 8, 65536, "SwiGLU width of the base"),
    OPTION("--context", 'i', context, 64, 1e6, "max_position_embeddings of the base"),
    OPTION("--model", 's', model, 0, 0, "Hugging Face directory to use as base instead"),
    OPTION("--data", 's', data, 0, 0, "JSON lines {\"question\",\"answer\"} to use as task instead"),
    OPTION("--prompt", 's', prompt, 0, 0, "prompt around {question}, with --data"),
    OPTION("--end-token", 's', end_token, 0, 0, "text of the token that ends a response, with --data"),
    OPTION("--teacher-length", 'i', teacher_length, 1, 1e6, "tokens of a feedback"),
    OPTION("--help", 'f', help, 0, 0, "this text")
};
#define N_OPTIONS (sizeof option_list / sizeof *option_list)

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
    o.arms = "grpo,thinktune";
    o.aas = "released";
    o.mask = "whole";
    o.schedule = "linear";
    o.prompt = "Question: {question}\nAnswer:";
    return o;
}
static int *option_int(options *o, const option *p) { return (int *)(void *)((char *)o + p->at); }
static double *option_double(options *o, const option *p) { return (double *)(void *)((char *)o + p->at); }
static const char **option_text(options *o, const option *p) { return (const char **)(void *)((char *)o + p->at); }

static void print_help(void) {
    options o = default_options();
    size_t i;
    printf("usage: thinktune [options]\n");
    for (i = 0; i < N_OPTIONS; i++) {
        const option *p = &option_list[i];
        char value[64] = "";
        if (p->type == 'i') { snprintf(value, sizeof value, "%d", *option_int(&o, p)); }
        if (p->type == 'd') { snprintf(value, sizeof value, "%g", *option_double(&o, p)); }
        if (p->type == 's' && *option_text(&o, p) && strlen(*option_text(&o, p)) < 20) { snprintf(value, sizeof value, "%s", *option_text(&o, p)); }
        printf("  %-18s %-15s %s\n", p->name, value, p->help);
    }
}
static int usage_error(const char *format, const char *name, const char *value) {
    fprintf(stderr, "thinktune: ");
    fprintf(stderr, format, name, value);
    fprintf(stderr, "\n(thinktune --help lists the options)\n");
    return 2;
}
static int set_option(options *o, const option *p, const char *value) {
    char *end;
    double number;
    if (p->type == 's') { *option_text(o, p) = value; return 0; }
    number = strtod(value, &end);
    if (end == value || *end || !(number >= p->low && number <= p->high) || (p->type == 'i' && number != floor(number))) {
        char range[64];
        snprintf(range, sizeof range, "%s, expected %s %g .. %g", value, p->type == 'i' ? "a whole number" : "a number", p->low, p->high);
        return usage_error("%s is %s", p->name, range);
    }
    if (p->type == 'i') { *option_int(o, p) = (int)number; } else { *option_double(o, p) = number; }
    return 0;
}
/* Is word one of the comma-separated words of list? Its place, or -1. */
static int find_word(const char *list, const char *word, size_t size) {
    int place = 0;
    for (; *list; place++) {
        size_t n = strcspn(list, ",");
        if (n == size && memcmp(list, word, n) == 0) { return place; }
        list += n + (list[n] == ',');
    }
    return -1;
}
#define AAS_WORDS "released,formula,luffy,off"
static int check_words(const options *o) {
    const char *at;
    int n = 0;
    if (find_word(AAS_WORDS, o->aas, strlen(o->aas)) < 0) { return usage_error("%s is %s, expected one of " AAS_WORDS, "--aas", o->aas); }
    if (find_word("whole,appended", o->mask, strlen(o->mask)) < 0) { return usage_error("%s is %s, expected whole or appended", "--mask", o->mask); }
    if (find_word("linear,constant,cosine,exp", o->schedule, strlen(o->schedule)) < 0) { return usage_error("%s is %s, expected linear, constant, cosine or exp", "--schedule", o->schedule); }
    for (at = o->arms; *at; n++) {
        size_t size = strcspn(at, ",");
        if (find_word("grpo,thinktune,formula,luffy,off", at, size) < 0 || find_word(o->arms, at, size) != n) {
            return usage_error("%s is %s, expected different ones of grpo, thinktune, formula, luffy, off", "--arms", o->arms);
        }
        at += size + (at[size] == ',');
    }
    if (n == 0) { return usage_error("%s is empty%s", "--arms", ""); }
    if (!o->model != !o->data) { return usage_error("%s wants %s beside it", o->model ? "--model" : "--data", o->model ? "--data" : "--model"); }
    if (o->data && !o->end_token) { return usage_error("%s wants %s beside it", "--data", "--end-token"); }
    return 0;
}
/* Values that --quick replaces, unless they are given. */
static void apply_quick(options *o) {
    options d = default_options();
    if (o->steps == d.steps) { o->steps = 6; }
    if (o->pretrain_steps == d.pretrain_steps) { o->pretrain_steps = 60; }
    if (o->questions == d.questions) { o->questions = 64; }
    if (o->gate_questions == d.gate_questions) { o->gate_questions = 32; }
    if (o->prompts == d.prompts) { o->prompts = 4; }
}
/* 0 = go on, else the exit status (which is 0 after --help: then o->help is set). */
static int parse_options(options *o, int argc, char **argv) {
    int i;
    size_t k;
    *o = default_options();
    for (i = 1; i < argc; i++) {
        for (k = 0; k < N_OPTIONS && strcmp(argv[i], option_list[k].name) != 0; k++) { }
        if (k == N_OPTIONS) { return usage_error("unknown option %s%s", argv[i], ""); }
        if (option_list[k].type == 'f') { *option_int(o, &option_list[k]) = 1; continue; }
        if (i + 1 == argc) { return usage_error("%s wants a value%s", argv[i], ""); }
        if (set_option(o, &option_list[k], argv[++i]) != 0) { return 2; }
    }
    if (o->quick) { apply_quick(o); }
    return check_words(o);
}

/* ---- the run ---- */
typedef struct app {
    options o;
    tt_context *ctx;
    tt_text settings;             /* all that the results depend on, as text */
    tt_signs *signs;              /* of this seed                            */
    tt_jsonl *data;               /* with --data                             */
    tt_task task;
    tt_tokenizer *tokenizer;
    tt_model *base;
    tt_reducer *reducer;          /* of pretraining                          */
    int seed, n_arms, terminal;
    char arms[MAX_ARMS][16];
    double begin, shown;          /* clock of the phase and of its last line */
    int first_step;
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
/* A path under OUT; valid for the next three calls. */
static const char *path_of(const char *out, const char *format, ...) {
    static char paths[4][1024];
    static int next;
    char *path = paths[next++ % 4];
    int n = snprintf(path, 1024, "%s/", out);
    va_list list;
    va_start(list, format);
    if (n > 0 && n < 1024) { vsnprintf(path + n, (size_t)(1024 - n), format, list); }
    va_end(list);
    return path;
}
static int file_exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) { fclose(file); }
    return file != NULL;
}

/* ---- live progress: one line, rewritten on a terminal, else a new line now and then ---- */
static void progress_begin(app *a, int first_step) {
    a->begin = tt_clock();
    a->shown = -1e9;
    a->first_step = first_step;
}
static void progress(app *a, const char *phase, int step, int total, double tokens, const char *format, ...) {
    double now = tt_clock(), elapsed = now - a->begin, left;
    char figures[160];
    va_list list;
    if (now - a->shown < (a->terminal ? 0.1 : 10) && step < total) { return; }
    a->shown = now;
    va_start(list, format);
    vsnprintf(figures, sizeof figures, format, list);
    va_end(list);
    left = step > a->first_step ? elapsed / (step - a->first_step) * (total - step) : 0;
    printf("%sseed %d  %-10s %5d/%d  %s  %6.0f tokens/s  %2d:%02d left%s", a->terminal ? "\r" : "", a->seed, phase, step, total, figures,
           elapsed > 0 ? tokens / elapsed : 0, (int)left / 60, (int)left % 60, a->terminal ? "\033[K" : "\n");
    if (a->terminal && step >= total) { printf("\n"); }
    fflush(stdout);
}
static void say(app *a, const char *format, ...) {
    va_list list;
    (void)a;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    fflush(stdout);
}
static tt_status interrupted(app *a, const char *what) {
    return tt_fail(a->ctx, TT_ERR_STOP, "stopped during %s; go on with the same command and --resume", what);
}

/* ---- pretraining ---- */
typedef struct pack { tt_ids tokens, offsets; tt_text mask; } pack;
/* Documents until the step has its tokens: a pure function of (seed, step). */
static tt_status pack_document(app *a, pack *p, uint64_t index, double at, tt_text *text) {
    size_t from = 0, before = p->tokens.size, i;
    int32_t end;
    text->size = 0;
    CHECK(tt_signs_document(a->signs, index, at, text, &from));
    CHECK(tt_encode(a->tokenizer, text->data, from, TT_SPECIAL_PARSE, &p->tokens));
    for (i = before; i < p->tokens.size; i++) { CHECK(tt_text_append(&p->mask, "\0", 1)); }
    before = p->tokens.size;
    CHECK(tt_encode(a->tokenizer, text->data + from, text->size - from, TT_SPECIAL_PARSE, &p->tokens));
    for (i = before; i < p->tokens.size; i++) { CHECK(tt_text_append(&p->mask, "\1", 1)); }
    end = (int32_t)p->tokens.size;
    return tt_ids_append(&p->offsets, &end, 1);
}
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
    if (batch && batch->n_targets != n_targets) { loss = tt_scale(a->ctx, loss, (float)batch->n_targets / (float)n_targets); }
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
    int own = d->n_parts / d->world_size, n = (int)p->offsets.size - 1, n_targets = 0, part;
    size_t i;
    *loss_out = 0;
    for (i = 0; i < p->mask.size; i++) { n_targets += p->mask.data[i] != 0; }      /* never the first of a document */
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = (int)((long long)n * part / d->n_parts), end = (int)((long long)n * (part + 1) / d->n_parts);
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
    return tt_optimizer_step(optimizer, tt_learning_rate(&schedule, step), NULL);
}
static tt_status pretrain_resume(app *a, tt_optimizer *optimizer, const char *state, int *step) {
    tt_text json = new_text(a);
    tt_json *root;
    tt_status status;
    if (!file_exists(state)) { return TT_OK; }
    status = tt_optimizer_load(optimizer, state, &json);
    root = status == TT_OK ? tt_json_parse(a->ctx, json.data, json.size) : NULL;
    *step = (int)tt_json_number(root, "step", 0);
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
        double now;
        int stop;
        CHECK(pretrain_step(a, optimizer, p, step++, &loss));
        stop = parallel_any(stop_requested);
        tokens += (double)p->tokens.size;
        progress(a, "pretrain", step, total, tokens, "loss %.3f", loss);
        now = tt_clock();
        if (!stop && now - saved < 10 && step < total) { continue; }
        snprintf(json, sizeof json, "{\"step\":%d}", step);
        if (parallel_rank == 0) { CHECK(tt_optimizer_save(optimizer, state, json)); }
        saved = now;
        if (stop && step < total) { return interrupted(a, "pretraining"); }
    }
    return TT_OK;
}
static tt_status pretrain(app *a, const char *dir) {
    tt_model_config config = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    tt_optimizer *optimizer;
    pack p;
    char state[1100];
    tt_status status = TT_ERR_MEM;
    a->tokenizer = tt_signs_tokenizer(a->signs);
    if (!a->tokenizer) { return tt_error_status(a->ctx); }
    config.vocab_size = tt_vocab_size(a->tokenizer);
    config.hidden_size = a->o.hidden;
    config.num_hidden_layers = a->o.layers;
    config.num_attention_heads = a->o.heads;
    config.intermediate_size = a->o.inner;
    config.max_position_embeddings = a->o.context;
    config.bos_token_id = -1;
    config.eos_token_id = tt_token_id(a->tokenizer, "<end>");
    adamw.beta2 = 0.98f;
    adamw.weight_decay = 0.01f;
    adamw.max_grad_norm = 1;
    a->base = tt_model_create(a->ctx, &config, (uint64_t)a->seed);
    optimizer = a->base ? tt_adamw_create(a->base, &adamw) : NULL;
    a->reducer = optimizer ? parallel_reducer(a->ctx, a->base, a->o.gradient_parts) : NULL;
    p.tokens = new_ids(a);
    p.offsets = new_ids(a);
    p.mask = new_text(a);
    snprintf(state, sizeof state, "%s/pretrain.state", dir);
    if (a->reducer) { status = pretrain_loop(a, optimizer, &p, state); }
    if (status == TT_OK && parallel_rank == 0) { status = tt_model_save(a->base, a->tokenizer, dir); }
    tt_ids_free(&p.tokens);
    tt_ids_free(&p.offsets);
    tt_text_free(&p.mask);
    tt_reducer_destroy(a->reducer);
    tt_optimizer_destroy(optimizer);
    return status;
}
/* The base is found by all that it depends on. It is always read back from its folder, whose file "complete"
 * is written last, so that the first start and the second see the same model. */
static tt_status base_from_cache(app *a) {
    char key[256], dir[1024], complete[1100];
    const options *o = &a->o;
    tt_status status = TT_OK;
    snprintf(key, sizeof key, "signs " TT_VERSION " seed %d layers %d hidden %d heads %d inner %d context %d steps %d tokens %d lr %.9g", a->seed,
             o->layers, o->hidden, o->heads, o->inner, o->context, o->pretrain_steps, o->pretrain_tokens, o->pretrain_lr);
    if (o->gradient_parts) { snprintf(key + strlen(key), sizeof key - strlen(key), " parts %d", o->gradient_parts); }
    snprintf(dir, sizeof dir, "%s", path_of(o->out, "base-%d-%016llx", a->seed, (unsigned long long)tt_hash(key, strlen(key), 0)));
    snprintf(complete, sizeof complete, "%s/complete", dir);
    CHECK(tt_make_dirs(a->ctx, dir));
    if (parallel_any(!file_exists(complete))) {
        status = pretrain(a, dir);
        if (status == TT_OK && parallel_rank == 0) { status = tt_file_write(a->ctx, complete, key, strlen(key)); }
        tt_model_destroy(a->base);
        tt_tokenizer_destroy(a->tokenizer);
        a->base = NULL;
        a->tokenizer = NULL;
        CHECK(status);
        parallel_any(0);                       /* until the file is there */
    } else { say(a, "seed %d  base found in %s\n", a->seed, dir); }
    a->base = tt_model_load(a->ctx, dir);
    a->tokenizer = a->base ? tt_tokenizer_load(a->ctx, path_of(dir, "tokenizer.json")) : NULL;
    return a->tokenizer ? TT_OK : tt_error_status(a->ctx);
}
static tt_status base_from_directory(app *a) {
    a->base = tt_model_load(a->ctx, a->o.model);
    a->tokenizer = a->base ? tt_tokenizer_load(a->ctx, path_of(a->o.model, "tokenizer.json")) : NULL;
    return a->tokenizer ? TT_OK : tt_error_status(a->ctx);
}

/* ---- the teacher: a frozen copy of the base under another prompt ---- */
static const char worked_examples[] =
    "You read a question and a student's response, and write feedback in the student's own voice, in this form:\n"
    "<opinion>correct or incorrect</opinion> <reason>reflection in the first person</reason> <phrase>continuation that ends with the final answer</phrase>\n\n"
    "Question:\nTom has 3 bags of 4 apples. How many apples?\n\nResponse:\n3 x 4 = 12. #### 12\n\n"
    "<opinion>correct</opinion> <reason>Let me go over my steps: 3 bags with 4 each is 4 + 4 + 4 = 12, so it holds.</reason> <phrase>I stay with 12. #### 12</phrase>\n\n"
    "Question:\nAnn had 10 coins and gave away 4. How many are left?\n\nResponse:\n10 + 4 = 14. #### 14\n\n"
    "<opinion>incorrect</opinion> <reason>Wait, she gave coins away, so there cannot be more than 10; I added where I must subtract.</reason> <phrase>10 - 4 = 6. #### 6</phrase>\n\n"
    "Question:\nA pen costs 2 and a book 5. What do 2 pens and a book cost?\n\nResponse:\n2 + 5 = 7. #### 7\n\n"
    "<opinion>incorrect</opinion> <reason>What would a mentor say? Count each thing that is bought: two pens, not one.</reason> <phrase>2 x 2 + 5 = 9. #### 9</phrase>\n\n"
    "Question:\nA bus has 20 seats, half are taken. How many are free?\n\nResponse:\n10. #### 10\n\n"
    "<opinion>correct</opinion> <reason>The answer is right, but I should have checked it: half of 20 is 10, and 10 + 10 = 20.</reason> <phrase>So 10 are free. #### 10</phrase>\n\n";

static tt_model_teacher *make_teacher(app *a, tt_model *frozen) {
    tt_teacher_prompt prompt = TT_INIT;
    prompt.max_new_tokens = a->o.teacher_length;
    prompt.stop_token = a->o.end_token;
    prompt.system = worked_examples;
    if (!a->data) {
        prompt.prompt_template = TT_SIGNS_TEACHER_TEMPLATE;
        prompt.stop_token = TT_SIGNS_TEACHER_STOP;
        prompt.system = NULL;
    }
    return tt_model_teacher_create(frozen, a->tokenizer, &prompt);
}

/* ---- the gate: can this base teach, and would reward alone find reflection anyway? ---- */
static tt_status prompt_ids(app *a, const char *question, tt_ids *ids) {
    const char *mark = strstr(a->task.prompt_template, "{question}"), *rest = mark + strlen("{question}");
    CHECK(tt_encode(a->tokenizer, a->task.prompt_template, (size_t)(mark - a->task.prompt_template), TT_SPECIAL_PARSE, ids));
    CHECK(tt_encode(a->tokenizer, question, strlen(question), TT_SPECIAL_TEXT, ids));
    return tt_encode(a->tokenizer, rest, strlen(rest), TT_SPECIAL_PARSE, ids);
}
/* Reward and outcome of tokens as the response to held-out question `index`. */
static tt_status assess(app *a, int index, const int32_t *tokens, int n, int stopped, int *right) {
    tt_text question = new_text(a), answer = new_text(a), response = new_text(a);
    tt_reward_input in;
    float reward = 0;
    tt_status status = a->task.question(a->task.user, 1, (uint64_t)index, &question, &answer);
    if (status == TT_OK) { status = tt_decode(a->tokenizer, tokens, (size_t)(n - (stopped ? 1 : 0)), 0, &response); }
    if (status == TT_OK) { status = tt_text_append(&response, "", 0); }
    in.question = question.data;
    in.answer = answer.data;
    in.response = response.data;
    in.response_size = response.size;
    in.stopped = stopped;
    if (status == TT_OK) { status = a->task.reward(a->task.user, &in, &reward); }
    *right = reward > 0.5f;
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_text_free(&response);
    return status;
}
/* Samples once from each of n prompts that stand one after another in ids; ends[i] is where prompt i ends. */
static tt_status sample_prompts(app *a, tt_model *model, const tt_ids *ids, const tt_ids *ends, uint64_t seed, tt_rollouts *out) {
    int n = (int)ends->size, i, at = 0;
    int32_t end = tt_token_id(a->tokenizer, a->task.end_token);
    tt_request *requests = (tt_request *)tt_alloc(a->ctx, (size_t)n, sizeof *requests);
    tt_sampling sampling = TT_INIT;
    tt_completions completions = TT_INIT;
    tt_status status;
    if (!requests) { return TT_ERR_MEM; }
    for (i = 0; i < n; i++) {
        requests[i].prompt = ids->data + at;
        requests[i].prompt_length = ends->data[i] - at;
        requests[i].n = 1;
        requests[i].id = (uint64_t)i;
        at = ends->data[i];
    }
    sampling.max_new_tokens = a->o.length;
    sampling.temperature = (float)a->o.temperature;
    sampling.seed = seed;
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    status = tt_generate(model, requests, n, &sampling, &completions);
    if (status == TT_OK) { status = tt_rollouts_create(a->ctx, requests, n, &completions, end, out); }
    tt_completions_free(&completions);
    tt_free(a->ctx, requests, (size_t)n, sizeof *requests);
    return status;
}
/* The base's own attempts at held-out questions; later passes continue them. */
static tt_status gate_attempts(app *a, tt_rollouts *attempts) {
    tt_ids ids = new_ids(a), ends = new_ids(a);
    tt_text question = new_text(a), answer = new_text(a);
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < a->o.gate_questions && status == TT_OK; i++) {
        int32_t end;
        question.size = answer.size = 0;
        status = a->task.question(a->task.user, 1, (uint64_t)i, &question, &answer);
        if (status == TT_OK) { status = prompt_ids(a, question.data, &ids); }
        end = (int32_t)ids.size;
        if (status == TT_OK) { status = tt_ids_append(&ends, &end, 1); }
    }
    if (status == TT_OK) { status = sample_prompts(a, a->base, &ids, &ends, (uint64_t)a->seed, attempts); }
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        question.size = answer.size = 0;
        status = a->task.question(a->task.user, 1, (uint64_t)i, &question, &answer);
        if (status == TT_OK) { status = tt_rollouts_question(attempts, i, question.data); }
    }
    tt_ids_free(&ids);
    tt_ids_free(&ends);
    tt_text_free(&question);
    tt_text_free(&answer);
    return status;
}
typedef struct gate { double hit, rescue, spoil, coherence, leak, leak_max; } gate;

/* Leak: the probability that an attempt holds any word that student documents never hold (the sum over its
 * positions; they are tiny). From such a word on, the base falls into the voice of its other documents. */
static double foreign_mass(const float *logits, int vocab, const char *known) {
    double top = (double)logits[0], sum = 0, mass = 0;
    int i;
    for (i = 1; i < vocab; i++) { if ((double)logits[i] > top) { top = (double)logits[i]; } }
    for (i = 0; i < vocab; i++) {
        double e = exp((double)logits[i] - top);
        sum += e;
        if (!known[i]) { mass += e; }
    }
    return mass / sum;
}
static tt_status gate_leak_of(app *a, const tt_rollouts *attempts, int index, const char *known, double *leak) {
    tt_batch *batch;
    tt_tensor *logits = NULL;
    float *values;
    int row;
    size_t size;
    tt_status status;
    tt_no_grad_begin(a->ctx);
    batch = tt_rollouts_batch(a->ctx, attempts, &index, 1);
    if (batch) { logits = tt_model_logits(a->base, tt_gather_rows(a->ctx, tt_model_forward(a->base, batch), batch->target_rows, batch->n_targets)); }
    tt_no_grad_end(a->ctx);
    if (!logits) { return tt_eval(a->ctx); }
    size = logits->size;
    values = (float *)tt_alloc(a->ctx, size, sizeof *values);
    if (!values) { return TT_ERR_MEM; }
    status = tt_tensor_get(logits, values);
    for (*leak = 0, row = 0; row < logits->shape[0]; row++) { *leak += foreign_mass(values + (size_t)row * (size_t)logits->shape[1], logits->shape[1], known); }
    tt_free(a->ctx, values, size, sizeof *values);
    tt_step_reset(a->ctx);
    return status;
}
static tt_status gate_leak(app *a, const tt_rollouts *attempts, gate *g) {
    int vocab = tt_vocab_size(a->tokenizer), end = tt_token_id(a->tokenizer, a->task.end_token), i;
    char *known = (char *)tt_alloc(a->ctx, (size_t)vocab, 1), word[4];
    tt_status status = known ? TT_OK : TT_ERR_MEM;
    for (i = -9; i <= 9 && known; i++) {
        int id;
        snprintf(word, sizeof word, " %+d", i);
        id = tt_token_id(a->tokenizer, i ? word : " answer");
        if (id >= 0) { known[id] = 1; }
    }
    if (known && end >= 0) { known[end] = 1; }
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        double leak = 0;
        status = gate_leak_of(a, attempts, i, known, &leak);
        g->leak += leak / attempts->n;
        if (leak > g->leak_max) { g->leak_max = leak; }
    }
    tt_free(a->ctx, known, (size_t)vocab, 1);
    return status;
}
/* Coherence: "\n\n" is put after each attempt and the student goes on by itself; share of right answers. */
static tt_status gate_coherence(app *a, const tt_rollouts *attempts, gate *g) {
    tt_ids ids = new_ids(a), ends = new_ids(a);
    tt_rollouts more = TT_INIT;
    tt_status status = TT_OK;
    int32_t marker = tt_token_id(a->tokenizer, "\n\n");
    int i, right;
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        const tt_rollout *r = &attempts->items[i];
        int32_t end;
        status = tt_ids_append(&ids, r->tokens, (size_t)(r->prompt_length + r->response_length - (r->stopped ? 1 : 0)));
        if (status == TT_OK) { status = tt_ids_append(&ids, &marker, 1); }
        end = (int32_t)ids.size;
        if (status == TT_OK) { status = tt_ids_append(&ends, &end, 1); }
    }
    if (status == TT_OK) { status = sample_prompts(a, a->base, &ids, &ends, (uint64_t)a->seed + 1, &more); }
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        const tt_rollout *r = &more.items[i];
        int prompt = attempts->items[i].prompt_length;
        status = assess(a, i, r->tokens + prompt, r->prompt_length + r->response_length - prompt, r->stopped, &right);
        g->coherence += (double)right / attempts->n;
    }
    tt_rollouts_free(&more);
    tt_ids_free(&ids);
    tt_ids_free(&ends);
    return status;
}
static tt_status write_guided(app *a, const tt_rollout *r, int right, tt_text *json) {
    tt_text attempt = new_text(a), feedback = new_text(a), question = new_text(a);
    const int32_t *response = r->tokens + r->prompt_length;
    tt_status status = tt_decode(a->tokenizer, r->tokens, (size_t)r->prompt_length, 1, &question);
    if (status == TT_OK) { status = tt_decode(a->tokenizer, response, (size_t)r->attempt_length, 1, &attempt); }
    if (status == TT_OK) { status = tt_decode(a->tokenizer, response + r->attempt_length, (size_t)(r->response_length - r->attempt_length), 1, &feedback); }
    if (status == TT_OK) { status = tt_text_format(json, "%s{\"right\":%d,\"question\":", json->data[json->size - 1] == '[' ? "" : ",", right); }
    if (status == TT_OK) { status = tt_text_json(json, question.data, question.size); }
    if (status == TT_OK) { status = tt_text_format(json, ",\"attempt\":"); }
    if (status == TT_OK) { status = tt_text_json(json, attempt.data, attempt.size); }
    if (status == TT_OK) { status = tt_text_format(json, ",\"feedback\":"); }
    if (status == TT_OK) { status = tt_text_json(json, feedback.data, feedback.size); }
    if (status == TT_OK) { status = tt_text_append(json, "}", 1); }
    tt_text_free(&attempt);
    tt_text_free(&feedback);
    tt_text_free(&question);
    return status;
}
/* The teacher continues every attempt: hit = final answer right, rescue = of the wrong ones, spoil = of the right ones. */
static tt_status gate_hit_count(app *a, tt_rollouts *attempts, const char *was_right, gate *g, tt_text *json) {
    int i, n = 0, right, hits = 0, rights = 0, rescued = 0, spoiled = 0;
    for (i = 0; i < attempts->n; i++) {
        const tt_rollout *r = &attempts->items[i];
        if (!r->guided) { continue; }
        CHECK(assess(a, i, r->tokens + r->prompt_length, r->response_length, r->stopped, &right));
        if (n++ < SHOWN) { CHECK(write_guided(a, r, right, json)); }
        hits += right;
        rights += was_right[i];
        rescued += right && !was_right[i];
        spoiled += was_right[i] && !right;
    }
    g->hit = n ? (double)hits / n : 0;
    g->rescue = n > rights ? (double)rescued / (n - rights) : 0;
    g->spoil = rights ? (double)spoiled / rights : 0;
    return TT_OK;
}
static tt_status gate_hit(app *a, tt_rollouts *attempts, gate *g, tt_text *json) {
    tt_model_teacher *model = make_teacher(a, a->base);
    tt_think_config think = TT_INIT;
    tt_grpo_config grpo = TT_INIT;
    tt_think_metrics metrics;
    tt_teacher teacher;
    size_t n = (size_t)attempts->n;
    char *was_right = (char *)tt_alloc(a->ctx, n, 1);
    tt_status status = model && was_right ? TT_OK : TT_ERR_MEM;
    int i, right;
    for (i = 0; i < attempts->n && status == TT_OK; i++) {
        const tt_rollout *r = &attempts->items[i];
        status = assess(a, i, r->tokens + r->prompt_length, r->response_length, r->stopped, &right);
        was_right[i] = (char)right;
    }
    think.init_pct = think.min_pct = 1;
    think.off_eps = -1;
    think.total_steps = 1;
    think.schedule = TT_THINK_CONSTANT;
    grpo.num_generations = 1;
    grpo.max_completion_length = a->o.length;
    if (status == TT_OK) {
        teacher = tt_teacher_model(model);
        status = tt_think_augment(attempts, &teacher, a->tokenizer, &think, &grpo, tt_token_id(a->tokenizer, a->task.end_token), 0, &metrics);
    }
    if (status == TT_OK) { status = gate_hit_count(a, attempts, was_right, g, json); }
    tt_free(a->ctx, was_right, n, 1);
    tt_model_teacher_destroy(model);
    return status;
}
/* Thresholds: judged from the bases of several pilots; below them runs begin to fail. */
static void say_gate(app *a, const gate *g) {
    say(a, "seed %d  gate: teacher's hit %.3f (rescues %.3f, spoils %.3f)", a->seed, g->hit, g->rescue, g->spoil);
    if (!a->data) { say(a, ", coherence %.3f, leak %.1e (largest %.1e)", g->coherence, g->leak, g->leak_max); }
    say(a, "\n");
    if (g->hit < 0.7) { say(a, "  warning: a hit below 0.7: feedback that is often wrong is punished, not learned\n"); }
    if (!a->data && g->coherence < 0.15) { say(a, "  warning: coherence below 0.15: the student may learn to say the marker and nothing behind it\n"); }
    if (!a->data && g->leak > 1e-3) { say(a, "  warning: leak above 1e-3: reward alone may find reflection by accident\n"); }
}
static tt_status run_gate(app *a, gate *g, tt_text *json) {
    tt_rollouts attempts = TT_INIT;
    tt_status status = gate_attempts(a, &attempts);
    memset(g, 0, sizeof *g);
    if (status == TT_OK && !a->data) { status = gate_leak(a, &attempts, g); }
    if (status == TT_OK && !a->data) { status = gate_coherence(a, &attempts, g); }
    if (status == TT_OK) { status = gate_hit(a, &attempts, g, json); }
    tt_rollouts_free(&attempts);
    if (status == TT_OK) { say_gate(a, g); }
    return status;
}

/* ---- evaluation: the student alone; one result.json per seed and method ---- */
typedef struct collector { app *a; tt_text *json; int n; tt_status status; } collector;
static void collect(void *user, const char *question, const char *response, const tt_outcome *outcome) {
    collector *c = (collector *)user;
    if (c->n >= SHOWN || c->status != TT_OK) { return; }
    c->status = tt_text_format(c->json, "%s{\"right\":%d,\"first_right\":%d,\"question\":", c->n++ ? "," : "", outcome->final_right, outcome->first_right);
    if (c->status == TT_OK) { c->status = tt_text_json(c->json, question, strlen(question)); }
    if (c->status == TT_OK) { c->status = tt_text_format(c->json, ",\"response\":"); }
    if (c->status == TT_OK) { c->status = tt_text_json(c->json, response, strlen(response)); }
    if (c->status == TT_OK) { c->status = tt_text_append(c->json, "}", 1); }
}
static tt_status write_evaluation(tt_text *json, const char *name, const tt_evaluation *e) {
    return tt_text_format(json, ",\"%s\":{\"accuracy\":%.9g,\"first_accuracy\":%.9g,\"reflection_rate\":%.9g,\"correction_rate\":%.9g,"
                          "\"spoil_rate\":%.9g,\"mean_length\":%.9g,\"stopped_rate\":%.9g,\"behaviour\":[%.9g,%.9g,%.9g,%.9g]}",
                          name, e->accuracy, e->first_accuracy, e->reflection_rate, e->correction_rate, e->spoil_rate, e->mean_length, e->stopped_rate,
                          e->behaviour[TT_SELF_AGREEMENT], e->behaviour[TT_SELF_CONFLICT], e->behaviour[TT_SELF_CONSULTATION], e->behaviour[TT_SELF_CRITIQUE]);
}
static tt_status evaluate(app *a, tt_model *model, const char *method, tt_text *json) {
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation sampled, greedy;
    collector c;
    tt_status status;
    c.a = a;
    c.json = json;
    c.n = 0;
    c.status = TT_OK;
    d.n_questions = a->o.questions;
    d.max_new_tokens = a->o.length;
    d.temperature = (float)a->o.temperature;
    d.seed = (uint64_t)a->seed;
    d.reducer = parallel_reducer(a->ctx, model, a->o.gradient_parts);
    if (!d.reducer) { return tt_error_status(a->ctx); }
    status = tt_evaluate(model, a->tokenizer, &a->task, &d, &sampled);
    if (status == TT_OK) { status = tt_text_format(json, ",\"transcripts\":["); }
    d.greedy = 1;
    d.on_response = collect;
    d.user = &c;
    if (status == TT_OK) { status = tt_evaluate(model, a->tokenizer, &a->task, &d, &greedy); }
    tt_reducer_destroy(d.reducer);
    CHECK(status);
    CHECK(c.status);
    CHECK(tt_text_append(json, "]", 1));
    CHECK(write_evaluation(json, "sampled", &sampled));
    CHECK(write_evaluation(json, "greedy", &greedy));
    say(a, "seed %d  %-10s alone: accuracy %.3f (greedy %.3f)  reflection %.3f  correction %.3f  spoil %.3f\n", a->seed, method,
        sampled.accuracy, greedy.accuracy, sampled.reflection_rate, sampled.correction_rate, sampled.spoil_rate);
    return TT_OK;
}
static const char *result_path(const app *a, int seed, const char *method) { return path_of(a->o.out, "seed-%d/%s/result.json", seed, method); }
static tt_status measure(app *a, tt_model *model, const char *method) {
    tt_text json = new_text(a);
    gate g;
    tt_status status;
    status = tt_text_format(&json, "{\"seed\":%d,\"method\":\"%s\"", a->seed, method);
    if (status == TT_OK) { status = evaluate(a, model, method, &json); }
    if (parallel_rank > 0 || status != TT_OK) { tt_text_free(&json); return status; }
    status = tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method));
    if (status == TT_OK && strcmp(method, "base") == 0) {
        status = tt_text_format(&json, ",\"guided\":[");
        if (status == TT_OK) { status = run_gate(a, &g, &json); }
        if (status == TT_OK) {
            status = tt_text_format(&json, "],\"gate\":{\"seed\":%d,\"teacher_hit\":%.9g,\"rescue_rate\":%.9g,\"spoil_rate\":%.9g,\"coherence\":%.9g,\"leak\":%.9g,\"leak_max\":%.9g}",
                                    a->seed, g.hit, g.rescue, g.spoil, g.coherence, g.leak, g.leak_max);
        }
    }
    if (status == TT_OK) { status = tt_text_append(&json, "}\n", 2); }
    if (status == TT_OK) { status = tt_file_write(a->ctx, result_path(a, a->seed, method), json.data, json.size); }
    tt_text_free(&json);
    return status;
}

/* ---- training one arm ---- */
/* Cuts metrics.jsonl back to its first n_lines and opens it for more. Every arm before this one is complete,
 * so the number of lines is known: a line is on disk before the checkpoint that counts it. */
static tt_status open_metrics(app *a, int n_lines, FILE **file) {
    const char *path = path_of(a->o.out, "metrics.jsonl");
    tt_text text = new_text(a);
    size_t at = 0;
    int lines = 0;
    tt_status status;
    if (parallel_rank > 0) { return TT_OK; }
    status = n_lines ? tt_file_read(a->ctx, path, &text) : TT_OK;
    while (lines < n_lines && at < text.size) { lines += text.data[at++] == '\n'; }
    if (status == TT_OK && lines < n_lines) {
        status = tt_fail(a->ctx, TT_ERR_FILE, "%s has %d lines, expected at least %d; start again without --resume", path, lines, n_lines);
    }
    if (status == TT_OK) { status = tt_file_write(a->ctx, path, text.data ? text.data : "", at); }
    tt_text_free(&text);
    CHECK(status);
    *file = fopen(path, "ab");
    return *file ? TT_OK : tt_fail(a->ctx, TT_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
}
static tt_status write_metrics(app *a, FILE *file, FILE *timings, const char *method, const tt_step_metrics *metrics) {
    tt_text line = new_text(a);
    tt_step_metrics m = *metrics;
    tt_status status;
    if (parallel_rank > 0) { return TT_OK; }
    m.step_s = 0;                          /* leaves the timings out */
    status = tt_metrics_json(&m, &line);
    if (status == TT_OK && (fprintf(file, "{\"seed\":%d,\"method\":\"%s\",%s\n", a->seed, method, line.data + 1) < 0 || fflush(file) != 0)) {
        status = tt_fail(a->ctx, TT_ERR_IO, "metrics.jsonl cannot be written: %s", strerror(errno));
    }
    if (timings) {
        fprintf(timings, "{\"seed\":%d,\"method\":\"%s\",\"step\":%d,\"rollout_s\":%.4f,\"teacher_s\":%.4f,\"update_s\":%.4f,\"step_s\":%.4f}\n",
                a->seed, method, m.step, m.rollout_s, m.teacher_s, m.update_s, metrics->step_s);
        fflush(timings);
    }
    tt_text_free(&line);
    return status;
}
static tt_trainer_desc arm_desc(app *a, tt_model *student, const char *method, const tt_teacher *teacher) {
    const options *o = &a->o;
    tt_trainer_desc d = TT_INIT;
    const char *aas = strcmp(method, "thinktune") == 0 ? o->aas : method;
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
    d.think.total_steps = o->steps;
    d.think.seed = (uint64_t)a->seed;
    d.think.mask = strcmp(o->mask, "whole") == 0 ? TT_MASK_WHOLE : TT_MASK_APPENDED;
    d.think.schedule = (tt_think_schedule)find_word("linear,constant,cosine,exp", o->schedule, strlen(o->schedule));
    d.adamw.weight_decay = (float)o->weight_decay;
    d.adamw.max_grad_norm = (float)o->clip;
    d.schedule.lr = (float)o->lr;
    return d;
}
typedef struct arm_run { const char *method; tt_trainer *trainer; FILE *metrics, *timings; int warned; double guided; } arm_run;

/* Guided rewards that fall to nothing mean that the student has changed so much that feedback no longer fits. */
static void watch_guided(app *a, arm_run *arm, const tt_step_metrics *m) {
    if (m->think.n_guided == 0) { return; }
    arm->guided = m->step == 0 ? m->think.reward_guided : 0.7 * arm->guided + 0.3 * m->think.reward_guided;
    if (m->step < 5 || arm->guided > 0.2 || arm->warned) { return; }
    arm->warned = 1;
    say(a, "%s  warning: step %d: guided responses earn only %.2f on average; the marker may stay without its meaning\n", a->terminal ? "\n" : "", m->step, arm->guided);
}
static tt_status train_loop(app *a, arm_run *arm, const char *state) {
    int total = a->o.steps;
    double saved = tt_clock(), first_tokens = -1;
    progress_begin(a, tt_trainer_step_count(arm->trainer));
    while (tt_trainer_step_count(arm->trainer) < total) {
        tt_step_metrics m;
        int step, stop;
        CHECK(tt_trainer_step(arm->trainer, &m));
        stop = parallel_any(stop_requested);
        CHECK(write_metrics(a, arm->metrics, arm->timings, arm->method, &m));
        step = tt_trainer_step_count(arm->trainer);
        if (first_tokens < 0) { first_tokens = step - 1 == a->first_step && a->first_step > 0 ? m.num_tokens : 0; }
        progress(a, arm->method, step, total, m.num_tokens - first_tokens, "reward %.3f  reflection %.3f", m.think.reward_unguided, m.reflection_rate);
        watch_guided(a, arm, &m);
        if (!stop && tt_clock() - saved < 10 && step < total) { continue; }
        if (parallel_rank == 0) { CHECK(tt_trainer_save(arm->trainer, state)); }
        saved = tt_clock();
        if (stop && step < total) { return interrupted(a, arm->method); }
    }
    return TT_OK;
}
static tt_status train_student(app *a, tt_model *student, const char *method, int n_lines, const tt_teacher *teacher) {
    tt_trainer_desc desc = arm_desc(a, student, method, teacher);
    char state[1024];
    arm_run arm;
    tt_status status = TT_OK;
    memset(&arm, 0, sizeof arm);
    arm.method = method;
    snprintf(state, sizeof state, "%s", path_of(a->o.out, "seed-%d/%s/train.state", a->seed, method));
    arm.trainer = tt_trainer_create(a->ctx, &desc);
    if (!arm.trainer) { return tt_error_status(a->ctx); }
    if (parallel_any(a->o.resume && file_exists(state))) { status = tt_trainer_load(arm.trainer, state); }
    if (status == TT_OK) { status = open_metrics(a, n_lines + tt_trainer_step_count(arm.trainer), &arm.metrics); }
    if (parallel_rank == 0) { arm.timings = fopen(path_of(a->o.out, "timings.jsonl"), "ab"); }
    if (status == TT_OK) { status = train_loop(a, &arm, state); }
    if (arm.metrics) { fclose(arm.metrics); }
    if (arm.timings) { fclose(arm.timings); }
    tt_trainer_destroy(arm.trainer);
    return status;
}
static tt_status train_arm(app *a, const char *method, int n_lines) {
    tt_model *student = tt_model_create(a->ctx, tt_model_config_get(a->base), 0), *frozen = NULL;
    tt_model_teacher *model = NULL;
    tt_teacher teacher;
    int has_teacher = strcmp(method, "grpo") != 0;
    tt_status status = student ? tt_model_assign(student, a->base) : TT_ERR_MEM;
    if (status == TT_OK) { status = tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method)); }
    memset(&teacher, 0, sizeof teacher);
    if (status == TT_OK && has_teacher) {
        frozen = tt_model_copy(a->base);
        model = frozen ? make_teacher(a, frozen) : NULL;
        if (model) { teacher = tt_teacher_model(model); } else { status = tt_error_status(a->ctx); }
    }
    if (status == TT_OK) { status = train_student(a, student, method, n_lines, has_teacher ? &teacher : NULL); }
    if (status == TT_OK && parallel_rank == 0) { status = tt_model_save(student, a->tokenizer, path_of(a->o.out, "seed-%d/%s", a->seed, method)); }
    if (status == TT_OK) { status = measure(a, student, method); }
    tt_model_teacher_destroy(model);
    tt_model_destroy(frozen);
    tt_model_destroy(student);
    return status;
}

/* ---- results ---- */
#include "report.h"

static void print_table(const results *r) {
    char text[64];
    int m, f, width = r->n_seeds > 1 ? 16 : 13;
    printf("\nstudent alone, held out\n%-10s", "");
    for (f = 0; f < N_FIGURES; f++) { printf("%*s", width, figures[f].heading); }
    for (m = 0; m < r->n_methods; m++) {
        printf("\n%-10s", r->methods[m]);
        for (f = 0; f < N_FIGURES; f++) { printf("%*s", width, cell(r, m, f, " +- ", text, sizeof text)); }
    }
    printf("\n");
}
static void print_transcripts(const results *r, int n) {
    const tt_json *at[MAX_ARMS + 1];
    int m;
    for (m = 0; m < r->n_methods; m++) { at[m] = tt_json_get(r->of[m][0], "transcripts")->child; }
    for (; n > 0 && at[0]; n--) {
        printf("\n%s ?\n", tt_json_text(at[0], "question", ""));
        for (m = 0; m < r->n_methods && at[m]; m++) {
            const char *c = tt_json_text(at[m], "response", "");
            printf("  %-10s", r->methods[m]);
            for (; *c; c++) { if (*c != '\n') { putchar(*c); } else if (c[1] != '\n') { printf("\n            "); } }
            printf(tt_json_number(at[m], "right", 0) > 0 ? "   (right)\n" : "   (wrong)\n");
            at[m] = at[m]->next;
        }
    }
}
/* Reflection alone proves nothing; an empty "wait, check" is as frequent as a useful one. */
static void print_verdicts(const app *a, const results *r) {
    int m, s;
    for (m = 1; m < r->n_methods; m++) {
        int both = 0;
        for (s = 0; s < r->n_seeds; s++) { both += figure_of(r, m, s, 3) > 0.5 && figure_of(r, m, s, 4) > 0.3; }
        printf("%-10s reflects and corrects itself (reflection > 0.5 and correction > 0.3) in %d of %d seeds\n", r->methods[m], both, a->o.seeds);
    }
}
static tt_status finish(app *a) {
    results r;
    tt_text budget = new_text(a);
    tt_status status = read_results(a, &r);
    if (status == TT_OK) { status = write_summary(a, &r); }
    if (status == TT_OK) { status = write_pages(a, &r); }
    if (status == TT_OK) { status = write_budget(&r, &budget); }
    if (status == TT_OK) {
        print_transcripts(&r, 3);
        print_table(&r);
        print_verdicts(a, &r);
        printf("%s\nwritten: %s/summary.json, metrics.jsonl, report.html, curves.svg\n", budget.data, a->o.out);
    }
    tt_text_free(&budget);
    free_results(a, &r);
    return status;
}

/* ---- all seeds ---- */
static tt_status run_seed(app *a) {
    int i;
    if (parallel_any(!a->o.resume || !file_exists(result_path(a, a->seed, "base")))) { CHECK(measure(a, a->base, "base")); }
    for (i = 0; i < a->n_arms; i++) {
        int arms_before = (a->seed - a->o.first_seed) * a->n_arms + i;
        if (parallel_any(a->o.resume && file_exists(result_path(a, a->seed, a->arms[i])))) { continue; }
        CHECK(train_arm(a, a->arms[i], arms_before * a->o.steps));
    }
    return TT_OK;
}
static tt_status open_seed(app *a) {
    tt_signs_desc desc = TT_INIT;
    if (a->o.data) {
        a->data = tt_jsonl_load(a->ctx, a->o.data);
        if (!a->data) { return tt_error_status(a->ctx); }
        a->task = tt_task_jsonl(a->data, a->o.prompt, a->o.end_token);
        return base_from_directory(a);
    }
    desc.seed = (uint64_t)a->seed;
    a->signs = tt_signs_create(a->ctx, &desc);
    if (!a->signs) { return tt_error_status(a->ctx); }
    a->task = tt_task_signs(a->signs);
    return base_from_cache(a);
}
static void close_seed(app *a) {
    tt_model_destroy(a->base);
    tt_tokenizer_destroy(a->tokenizer);
    tt_jsonl_destroy(a->data);
    tt_signs_destroy(a->signs);
    a->base = NULL;
    a->tokenizer = NULL;
    a->data = NULL;
    a->signs = NULL;
}
static tt_status describe_settings(app *a) {
    static const char *const free_ones[] = {"--out", "--resume", "--threads", "--help"};
    size_t i, k;
    a->settings = new_text(a);
    for (i = 0; i < N_OPTIONS; i++) {
        const option *p = &option_list[i];
        for (k = 0; k < 4 && strcmp(p->name, free_ones[k]) != 0; k++) { }
        if (k < 4) { continue; }
        if (p->type == 's') { CHECK(tt_text_format(&a->settings, "%s %s\n", p->name, *option_text(&a->o, p) ? *option_text(&a->o, p) : "-")); }
        else if (p->type == 'd') { CHECK(tt_text_format(&a->settings, "%s %.9g\n", p->name, *option_double(&a->o, p))); }
        else { CHECK(tt_text_format(&a->settings, "%s %d\n", p->name, *option_int(&a->o, p))); }
    }
    return TT_OK;
}
/* --resume goes on only under the settings that the run began with; a fresh start forgets its last results. */
static tt_status prepare_folder(app *a) {
    char path[1024];
    tt_text was = new_text(a);
    int s, i, same;
    snprintf(path, sizeof path, "%s", path_of(a->o.out, "settings.txt"));
    CHECK(tt_make_dirs(a->ctx, a->o.out));
    if (a->o.resume && file_exists(path)) {
        CHECK(tt_file_read(a->ctx, path, &was));
        same = was.size == a->settings.size && memcmp(was.data, a->settings.data, was.size) == 0;
        tt_text_free(&was);
        return same ? TT_OK : tt_fail(a->ctx, TT_ERR_ARG, "--resume: the settings differ from those of the run in %s (see settings.txt there)", a->o.out);
    }
    for (s = a->o.first_seed; s < a->o.first_seed + a->o.seeds; s++) {
        remove(result_path(a, s, "base"));
        for (i = 0; i < a->n_arms; i++) {
            remove(result_path(a, s, a->arms[i]));
            remove(path_of(a->o.out, "seed-%d/%s/train.state", s, a->arms[i]));
        }
    }
    remove(path_of(a->o.out, "metrics.jsonl"));
    remove(path_of(a->o.out, "timings.jsonl"));
    return tt_file_write(a->ctx, path, a->settings.data, a->settings.size);
}
static tt_status run(app *a) {
    const char *at = a->o.arms;
    while (*at) {
        size_t size = strcspn(at, ",");
        snprintf(a->arms[a->n_arms++], sizeof a->arms[0], "%.*s", (int)size, at);
        at += size + (at[size] == ',');
    }
    CHECK(describe_settings(a));
    if (parallel_rank == 0) { CHECK(prepare_folder(a)); }
    parallel_any(0);                           /* until the folder is clean */
    for (a->seed = a->o.first_seed; a->seed < a->o.first_seed + a->o.seeds; a->seed++) {
        tt_status status = open_seed(a);
        if (status == TT_OK) { status = run_seed(a); }
        close_seed(a);
        CHECK(status);
    }
    return parallel_rank == 0 ? finish(a) : TT_OK;
}
int main(int argc, char **argv) {
    app a;
    tt_desc desc = TT_INIT;
    tt_status status;
    int usage;
    memset(&a, 0, sizeof a);
    parallel_begin(&argc, &argv);
    usage = parse_options(&a.o, argc, argv);
    if (usage != 0) { return usage; }
    if (a.o.help) { print_help(); parallel_end(); return 0; }
    signal(SIGINT, on_signal);
#ifdef SIGTERM
    signal(SIGTERM, on_signal);
#endif
    a.terminal = IS_TERMINAL();
    desc.n_threads = a.o.threads;
    a.ctx = tt_create(&desc);
    if (!a.ctx) { fprintf(stderr, "thinktune: out of memory\n"); return 1; }
    printf("thinktune: %d seed%s, arms %s, %d threads, %s kernels, results in %s%s\n", a.o.seeds, a.o.seeds > 1 ? "s" : "", a.o.arms, tt_threads(a.ctx), tt_kernel(a.ctx), a.o.out,
           a.o.quick ? " (quick: the numbers mean nothing)" : "");
    fflush(stdout);
    status = run(&a);
    if (status != TT_OK) { fprintf(stderr, "%sthinktune: %s\n", a.terminal ? "\n" : "", tt_error(a.ctx)); }
    tt_text_free(&a.settings);
    tt_destroy(a.ctx);
    if (status == TT_OK || status == TT_ERR_STOP) { parallel_end(); }      /* on all processes at the same step */
    return status == TT_OK ? 0 : status == TT_ERR_STOP ? 130 : 1;
}
