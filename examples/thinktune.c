/* thinktune.c - does feedback teach what reward alone does not? The whole experiment in one program.
 *
 *     make demo                                   (= build/thinktune --out runs/demo --seeds 1)
 *     build/thinktune --seeds 3 --arms grpo,thinktune,formula,off
 *     build/thinktune --task arithmetic           (or countdown, or guess: the control, in which reflection cannot help)
 *     build/thinktune --model DIR --data FILE.jsonl --chat --end-token "<|im_end|>"       (see make study-real)
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
#include "experiment.h"

/* ---- options ---- */
static options given;
static const option option_list[] = {
    {"--seeds", OPTION_INT, &given.seeds, 1, MAX_SEEDS, "how many seeds; the table is mean +- sd over all of them"},
    {"--first-seed", OPTION_INT, &given.first_seed, 0, 1000000, "the first of them"},
    {"--steps", OPTION_INT, &given.steps, 1, 1e6, "RL steps of each arm"},
    {"--pretrain-steps", OPTION_INT, &given.pretrain_steps, 1, 1e7, "pretraining steps of the base"},
    {"--out", OPTION_TEXT, &given.out, 0, 0, "folder of all results"},
    {"--resume", OPTION_FLAG, &given.resume, 0, 0, "go on where an interrupted run in --out stopped"},
    {"--task", OPTION_TEXT, &given.task, 0, 0, "signs, countdown, arithmetic or guess (the control: reflection cannot help)"},
    {"--arms", OPTION_TEXT, &given.arms, 0, 0, "list of grpo, thinktune, formula, luffy, off"},
    {"--aas", OPTION_TEXT, &given.aas, 0, 0, "shaping of the arm thinktune: released, formula, luffy, off"},
    {"--quick", OPTION_FLAG, &given.quick, 0, 0, "a few steps of everything, to see that it runs; numbers mean nothing"},
    {"--threads", OPTION_INT, &given.threads, 0, 1024, "0 = all; results do not depend on it"},
    {"--gradient-parts", OPTION_INT, &given.gradient_parts, 0, 65536, "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
    {"--prompts", OPTION_INT, &given.prompts, 1, 65536, "prompts per step"},
    {"--num-generations", OPTION_INT, &given.generations, 2, 1024, "responses per prompt"},
    {"--max-length", OPTION_INT, &given.length, 2, 1e6, "tokens of a response"},
    {"--num-iterations", OPTION_INT, &given.iterations, 1, 100, "updates per batch of rollouts"},
    {"--micro-batch-tokens", OPTION_INT, &given.micro_batch, 1, 1e9, "tokens of one forward and backward: memory grows with them"},
    {"--lr", OPTION_DOUBLE, &given.lr, 1e-12, 10, "learning rate of RL"},
    {"--weight-decay", OPTION_DOUBLE, &given.weight_decay, 0, 10, "of AdamW"},
    {"--max-grad-norm", OPTION_DOUBLE, &given.clip, 0, 1e6, "global gradient clip, 0 = off"},
    {"--temperature", OPTION_DOUBLE, &given.temperature, 1e-3, 100, "of sampling and of the trained log-probs"},
    {"--beta", OPTION_DOUBLE, &given.beta, 0, 100, "weight of the KL to the base"},
    {"--epsilon-low", OPTION_DOUBLE, &given.epsilon_low, 1e-6, 1, "PPO clip, lower side"},
    {"--epsilon-high", OPTION_DOUBLE, &given.epsilon_high, 1e-6, 10, "PPO clip, upper side"},
    {"--dual-clip", OPTION_DOUBLE, &given.dual_clip, -1, 100, "for negative advantages, -1 = off"},
    {"--entropy-coef", OPTION_DOUBLE, &given.entropy_coef, 0, 10, "entropy bonus"},
    {"--init-pct", OPTION_DOUBLE, &given.init_pct, 1e-6, 1, "share of responses that get feedback at step 0"},
    {"--min-pct", OPTION_DOUBLE, &given.min_pct, 1e-6, 1, "the share at a third of the steps"},
    {"--off-eps", OPTION_DOUBLE, &given.off_eps, -1, 1, "the teacher leaves at share <= off-eps + 0.01, -1 = never"},
    {"--schedule", OPTION_TEXT, &given.schedule, 0, 0, "of that share: linear, constant, cosine, exp"},
    {"--mask", OPTION_TEXT, &given.mask, 0, 0, "tokens that get the shaped loss: whole, appended"},
    {"--questions", OPTION_INT, &given.questions, 1, 1e6, "held-out questions of the final evaluation"},
    {"--gate-questions", OPTION_INT, &given.gate_questions, 1, 1e6, "held-out questions of the gate"},
    {"--pretrain-lr", OPTION_DOUBLE, &given.pretrain_lr, 1e-12, 10, "peak learning rate of pretraining"},
    {"--pretrain-tokens", OPTION_INT, &given.pretrain_tokens, 64, 1e6, "tokens of a pretraining step"},
    {"--layers", OPTION_INT, &given.layers, 1, 100, "of the base"},
    {"--hidden", OPTION_INT, &given.hidden, 8, 8192, "of the base"},
    {"--heads", OPTION_INT, &given.heads, 1, 256, "of the base"},
    {"--inner", OPTION_INT, &given.inner, 8, 65536, "SwiGLU width of the base"},
    {"--context", OPTION_INT, &given.context, 64, 1e6, "max_position_embeddings of the base"},
    {"--model", OPTION_TEXT, &given.model, 0, 0, "Hugging Face directory to use as base instead"},
    {"--data", OPTION_TEXT, &given.data, 0, 0, "JSON lines {\"question\",\"answer\"} to use as task instead"},
    {"--prompt", OPTION_TEXT, &given.prompt, 0, 0, "prompt around {question}, with --data"},
    {"--end-token", OPTION_TEXT, &given.end_token, 0, 0, "text of the token that ends a response, with --data"},
    {"--hold-out", OPTION_INT, &given.hold_out, 0, 1e9, "the last records of --data that are held out; 0 = an eighth"},
    {"--chat", OPTION_FLAG, &given.chat, 0, 0, "with --data: prompts are turns in the chat template of the model"},
    {"--lora-rank", OPTION_INT, &given.lora_rank, 0, 4096, "with --model: train adapters of this rank instead of all weights"},
    {"--map", OPTION_FLAG, &given.map, 0, 0, "with --lora-rank: leave the base in its file, which must not change meanwhile: less memory, slower if bf16 or f16"},
    {"--teacher-examples", OPTION_TEXT, &given.examples, 0, 0, "with --data: worked examples of the teacher, as in examples/teacher.txt"},
    {"--close-tags", OPTION_FLAG, &given.close_tags, 0, 0, "with --data: a tag in which the teacher's feedback ends is closed there; else it is missing, as in the paper"},
    {"--keep-best", OPTION_INT, &given.keep_best, 0, 1e6, "keep the student of the best so many steps in seed-SEED/METHOD/best; 0 = the last one alone"},
    {"--abort-patience", OPTION_INT, &given.abort_patience, 0, 1e6, "end after so many steps in a row without a finite gradient, reward or entropy; 0 = never"},
    {"--teacher-length", OPTION_INT, &given.teacher_length, 1, 1e6, "tokens of a feedback"}
};
enum { N_OPTIONS = sizeof option_list / sizeof *option_list };

/* Of the words of a list each must be one of those expected, and no word may come twice. */
static void check_words(const char *name, const char *list, const char *expected) {
    const char *at = list;
    int n = 0;
    for (; *at; n++) {
        size_t size = strcspn(at, ",");
        if (find_word(expected, at, size) < 0 || find_word(list, at, size) != n) { break; }
        at += size + (at[size] == ',');
    }
    if (*at || n == 0) { example_exit(2, "thinktune: %s is \"%s\", expected of %s", name, list, expected); }
}
static void check_options(const options *o) {
    check_words("--task", o->task, TASK_WORDS);
    check_words("--aas", o->aas, AAS_WORDS);
    check_words("--mask", o->mask, "whole,appended");
    check_words("--schedule", o->schedule, SCHEDULE_WORDS);
    check_words("--arms", o->arms, "grpo,thinktune,formula,luffy,off");
    if (!o->model != !o->data) { example_exit(2, "thinktune: %s wants %s beside it", o->model ? "--model" : "--data", o->model ? "--data" : "--model"); }
    if (o->lora_rank && !o->model) { example_exit(2, "thinktune: --lora-rank wants --model beside it"); }
    if (o->data && !o->end_token) { example_exit(2, "thinktune: --data wants --end-token beside it"); }
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

/* ---- one arm of one seed ---- */
static tt_status measure(app *a, tt_model *model, const char *method) {
    tt_text json = new_text(a);
    tt_status status;
    status = tt_text_format(&json, "{\"seed\":%d,\"method\":\"%s\"", a->seed, method);
    if (status == TT_OK) { status = evaluate(a, model, method, &json); }
    if (status == TT_OK && strcmp(method, "base") == 0) { status = write_gate(a, &json); }
    if (parallel_rank > 0 || status != TT_OK) { tt_text_free(&json); return status; }
    status = tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method));
    if (status == TT_OK) { status = tt_text_append(&json, "}\n", 2); }
    if (status == TT_OK) { status = tt_file_write(a->ctx, result_path(a, a->seed, method), json.data, json.size); }
    tt_text_free(&json);
    return status;
}
static tt_status train_arm(app *a, const char *method, int n_lines) {
    tt_model *student = new_student(a);
    tt_model_teacher *model = NULL;
    tt_teacher teacher;
    tt_trainer_desc desc;
    char metrics[PATH_BYTES];
    int has_teacher = strcmp(method, "grpo") != 0;
    tt_status status = student ? TT_OK : tt_error_status(a->ctx);
    if (status == TT_OK) { status = tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method)); }
    memset(&teacher, 0, sizeof teacher);
    if (status == TT_OK && has_teacher) {
        model = make_teacher(a, a->base);      /* which no step changes */
        if (model) { teacher = tt_teacher_model(model); } else { status = tt_error_status(a->ctx); }
    }
    desc = arm_desc(a, student, method, has_teacher ? &teacher : NULL);
    strcpy(metrics, path_of(a->o.out, "metrics.jsonl"));
    if (status == TT_OK) { status = train_student(a, method, &desc, metrics, n_lines); }
    if (status == TT_OK && parallel_rank == 0) { status = save_student(a, student, path_of(a->o.out, "seed-%d/%s", a->seed, method)); }
    if (status == TT_OK) { status = measure(a, student, method); }
    tt_model_teacher_destroy(model);
    tt_model_destroy(student);
    return status;
}

/* ---- results ---- */
#include "report.h"

static void print_table(const results *r) {
    char text[64];
    int m, f, width = r->n_seeds > 1 ? 16 : 13;
    printf("\nstudent alone, held out\n%-10s", "");
    for (f = 0; f < N_FIGURES; f++) { printf("%*s", width, heading_of(r, f)); }
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
    if (status == TT_OK) { status = write_differences(a, &r, "\n", &budget); }
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
    if (parallel_any(!a->o.resume || !tt_file_exists(result_path(a, a->seed, "base")))) { CHECK(measure(a, a->base, "base")); }
    for (i = 0; i < a->n_arms; i++) {
        int arms_before = (a->seed - a->o.first_seed) * a->n_arms + i;
        if (parallel_any(a->o.resume && tt_file_exists(result_path(a, a->seed, a->arms[i])))) { continue; }
        CHECK(train_arm(a, a->arms[i], arms_before * a->o.steps));
    }
    return TT_OK;
}
static tt_status describe_settings(app *a) {
    static const char free_ones[] = "--out,--resume,--threads";
    int i;
    a->settings = new_text(a);
    for (i = 0; i < N_OPTIONS; i++) {
        const option *p = &option_list[i];
        if (find_word(free_ones, p->name, strlen(p->name)) >= 0) { continue; }
        CHECK(tt_text_format(&a->settings, "%s ", p->name));
        if (p->type == OPTION_TEXT) { CHECK(tt_text_format(&a->settings, "%s\n", *(const char **)p->value ? *(const char **)p->value : "-")); }
        else if (p->type == OPTION_DOUBLE) { CHECK(tt_text_format(&a->settings, "%r\n", *(double *)p->value)); }
        else { CHECK(tt_text_format(&a->settings, "%d\n", *(int *)p->value)); }
    }
    return tt_text_format(&a->settings, "arithmetic %s\n", tt_kernel(a->ctx));
}
/* --resume goes on only under the settings that the run began with; a fresh start forgets its last results. */
static tt_status prepare_folder(app *a) {
    char path[PATH_BYTES];
    int s, i;
    strcpy(path, path_of(a->o.out, "settings.txt"));
    if (a->o.resume && tt_file_exists(path)) { return same_settings_as(a, path, a->settings.data); }
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
        tt_status status = open_base(a);
        if (status == TT_OK) { status = run_seed(a); }
        close_base(a);
        CHECK(status);
    }
    return parallel_rank == 0 ? finish(a) : TT_OK;
}
int main(int argc, char **argv) {
    app a;
    memset(&a, 0, sizeof a);
    parallel_begin(&argc, &argv);
    given = default_options();
    options_read(argc, argv, "GRPO against ThinkTuning on one base, with a report", option_list, N_OPTIONS);
    check_options(&given);
    if (given.quick) { apply_quick(&given); }
    return experiment_main(&a, &given, "thinktune", run);
}
