/* thinktune.c - does feedback teach what reward alone does not? The whole experiment in one program.
 *
 *     make demo                                   (= build/thinktune --out runs/demo --seeds 1)
 *     build/thinktune --seeds 3 --arms grpo,thinktune,formula,off
 *     build/thinktune --task arithmetic           (or countdown; or guess, where reflection cannot help)
 *     build/thinktune --model DIR --data FILE.jsonl --chat --end-token "<|im_end|>"   (see make study-real)
 *
 * As build/thinktune-mpi (make mpi) it shares prompts and gradients among the processes of mpirun; process 0
 * measures and writes.
 *
 * For each seed: pretrain a small base model on the task "signs" (put + or - before each digit so that the
 * sum is the target), measure it, check that it can teach (the gate), then train two students from that base
 * on the same prompts: plain GRPO, and ThinkTuning, where a frozen copy of the base reads some attempts and
 * continues them with feedback. In the end the students answer held-out questions alone.
 *
 * OUT gets summary.json, metrics.jsonl (one line per step), report.html, curves.svg, the base in
 * base-SEED-KEY/ (found again by the next start) and each student as a Hugging Face directory in
 * seed-SEED/METHOD/. All of these are the same bytes whenever seeds and settings are the same, also after
 * kill -9 and --resume; what depends on the clock goes to timings.jsonl. */
#define THINKTUNING_IMPLEMENTATION
#include "experiment.h"

/* ---- options ---- */
static options given;

#define ARM_WORDS "grpo,thinktune,formula,luffy,off,critique_grpo,rltf_sd,sdpo,opsd,opd,srpo,sft,worked"

static const option option_list[] = {
    {"--seeds", OPTION_INT, &given.seeds, 1, MAX_SEEDS,
     "how many seeds; the table is mean +- sd over all of them"},
    {"--first-seed", OPTION_INT, &given.first_seed, 0, 1000000, "the first of them"},
    {"--steps", OPTION_INT, &given.steps, 1, 1e6, "RL steps of each arm"},
    {"--pretrain-steps", OPTION_INT, &given.pretrain_steps, 1, 1e7, "pretraining steps of the base"},
    {"--out", OPTION_TEXT, &given.out, 0, 0, "folder of all results"},
    {"--resume", OPTION_FLAG, &given.resume, 0, 0, "go on where an interrupted run in --out stopped"},
    {"--task", OPTION_TEXT, &given.task, 0, 0,
     "signs, countdown, arithmetic or guess (the control: reflection cannot help)"},
    {"--arms", OPTION_TEXT, &given.arms, 0, 0, "list of " ARM_WORDS
     "; critique_grpo to srpo are of examples/feedback.h and want the task signs or --data; sft imitates "
     "the base's attempts that the teacher led to a right end; worked is the base behind --worked"},
    {"--aas", OPTION_TEXT, &given.aas, 0, 0, "shaping of the arm thinktune: released, formula, luffy, off"},
    {"--quick", OPTION_FLAG, &given.quick, 0, 0,
     "a few steps of everything, to see that it runs; numbers mean nothing"},
    {"--threads", OPTION_INT, &given.threads, 0, 1024, "0 = all; results do not depend on it"},
    {"--gradient-parts", OPTION_INT, &given.gradient_parts, 0, 65536,
     "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
    {"--prompts", OPTION_INT, &given.prompts, 1, 65536, "prompts per step"},
    {"--num-generations", OPTION_INT, &given.generations, 2, 1024, "responses per prompt"},
    {"--max-length", OPTION_INT, &given.length, 2, 1e6, "tokens of a response"},
    {"--num-iterations", OPTION_INT, &given.iterations, 1, 100, "updates per batch of rollouts"},
    {"--micro-batch-tokens", OPTION_INT, &given.micro_batch, 1, 1e9,
     "tokens of one forward and backward: memory grows with them"},
    {"--lr", OPTION_DOUBLE, &given.lr, 1e-12, 10, "learning rate of RL"},
    {"--arm-lr", OPTION_TEXT, &given.arm_lr, 0, 0, "of single arms where it differs: grpo=1e-4,sft=1e-5"},
    {"--weight-decay", OPTION_DOUBLE, &given.weight_decay, 0, 10, "of AdamW"},
    {"--max-grad-norm", OPTION_DOUBLE, &given.clip, 0, 1e6, "global gradient clip, 0 = off"},
    {"--temperature", OPTION_DOUBLE, &given.temperature, 1e-3, 100,
     "of sampling and of the trained log-probs"},
    {"--beta", OPTION_DOUBLE, &given.beta, 0, 100, "weight of the KL to the base"},
    {"--epsilon-low", OPTION_DOUBLE, &given.epsilon_low, 1e-6, 1, "PPO clip, lower side"},
    {"--epsilon-high", OPTION_DOUBLE, &given.epsilon_high, 1e-6, 10, "PPO clip, upper side"},
    {"--dual-clip", OPTION_DOUBLE, &given.dual_clip, -1, 100, "for negative advantages, -1 = off"},
    {"--entropy-coef", OPTION_DOUBLE, &given.entropy_coef, 0, 10, "entropy bonus"},
    {"--init-pct", OPTION_DOUBLE, &given.init_pct, 1e-6, 1, "share of responses that get feedback at step 0"},
    {"--min-pct", OPTION_DOUBLE, &given.min_pct, 1e-6, 1, "the share at a third of the steps"},
    {"--off-eps", OPTION_DOUBLE, &given.off_eps, -1, 1,
     "the teacher leaves at share <= off-eps + 0.01, -1 = never"},
    {"--schedule", OPTION_TEXT, &given.schedule, 0, 0, "of that share: linear, constant, cosine, exp"},
    {"--schedule-steps", OPTION_INT, &given.schedule_steps, 0, 1e7,
     "the share falls within a third of so many steps; 0 = --steps"},
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
    {"--end-token", OPTION_TEXT, &given.end_token, 0, 0,
     "text of the token that ends a response, with --data"},
    {"--hold-out", OPTION_INT, &given.hold_out, 0, 1e9,
     "the last records of --data that are held out; 0 = an eighth"},
    {"--on-long", OPTION_TEXT, &given.on_long, 0, 0,
     "with --data: a question whose prompt leaves no room for --max-length is left out and counted (skip), "
     "or named before any work (error)"},
    {"--chat", OPTION_FLAG, &given.chat, 0, 0,
     "with --data: prompts are turns in the chat template of the model"},
    {"--system", OPTION_TEXT, &given.system, 0, 0, "with --data: the system message before each question"},
    {"--few-shot", OPTION_TEXT, &given.few_shot, 0, 0,
     "with --data: turns shown before each question, {\"role\",\"content\"} a line, user and assistant "
     "in turn"},
    {"--prefill", OPTION_TEXT, &given.prefill, 0, 0,
     "with --data: how each response begins; it is part of the prompt"},
    {"--worked", OPTION_TEXT, &given.worked, 0, 0,
     "with --data: turns in the place of --few-shot for the arm worked, which is not trained"},
    {"--shift", OPTION_TEXT, &given.shift, 0, 0,
     "with --data: further questions out of domain, each asked of base and students"},
    {"--share-prompts", OPTION_FLAG, &given.share_prompts, 0, 0,
     "compute what the prompts of a micro-batch have in common once: faster with long prompts, gradients but "
     "for roundings the same"},
    {"--lora-rank", OPTION_INT, &given.lora_rank, 0, 4096,
     "with --model: train adapters of this rank instead of all weights"},
    {"--map", OPTION_FLAG, &given.map, 0, 0,
     "with --lora-rank: leave the base in its file, which must not change meanwhile: less memory, slower if "
     "bf16 or f16"},
    {"--teacher-examples", OPTION_TEXT, &given.examples, 0, 0,
     "with --data: worked examples of the teacher, as in examples/teacher.txt"},
    {"--separator", OPTION_TEXT, &given.separator, 0, 0,
     "with --data: stands between attempt, reason and phrase. A response learns it first, and whatever else "
     "it opens in the model's own writing"},
    {"--close-tags", OPTION_FLAG, &given.close_tags, 0, 0,
     "with --data: a tag in which the teacher's feedback ends is closed there; else it is missing, as in the "
     "paper"},
    {"--keep-best", OPTION_INT, &given.keep_best, 0, 1e6,
     "keep the student of the best so many steps in seed-SEED/METHOD/best; 0 = the last one alone"},
    {"--abort-patience", OPTION_INT, &given.abort_patience, 0, 1e6,
     "end after so many steps in a row without a finite gradient, reward or entropy; 0 = never, but for the "
     "gradient after 10"},
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

/* Does any arm show the student or a copy of it feedback, or a solution? */
static int reads_arms(const options *o) {
    const char *at = o->arms;
    int any = 0;
    while (*at) {
        size_t size = strcspn(at, ",");
        any |= find_word("critique_grpo,rltf_sd,sdpo,opsd,srpo", at, size) >= 0;
        at += size + (at[size] == ',');
    }
    return any;
}

static int has_arm(const options *o, const char *name) { return find_word(o->arms, name, strlen(name)) >= 0; }

/* "grpo=1e-4,sft=1e-5": a known arm and its rate, each. */
static void check_rates(const options *o) {
    const char *at = o->arm_lr;
    while (at && *at) {
        size_t size = strcspn(at, "=,");
        char *end = NULL;
        double rate = at[size] == '=' ? strtod(at + size + 1, &end) : 0;
        if (find_word(o->arms, at, size) < 0 || !(rate >= 1e-12 && rate <= 10) || (*end && *end != ',')) {
            example_exit(2, "thinktune: --arm-lr is \"%s\", expected an arm of --arms and a rate from 1e-12 "
                         "to 10, as in grpo=1e-4,sft=1e-5", o->arm_lr);
        }
        at = end + (*end == ',');
    }
}

static void check_options(const options *o) {
    check_words("--task", o->task, TASK_WORDS);
    check_words("--aas", o->aas, AAS_WORDS);
    check_words("--mask", o->mask, "whole,appended");
    check_words("--schedule", o->schedule, SCHEDULE_WORDS);
    check_words("--on-long", o->on_long, "skip,error");
    check_words("--arms", o->arms, ARM_WORDS);
    check_rates(o);
    if (reads_arms(o) && !o->data && strcmp(o->task, "signs") != 0) {
        example_exit(2, "thinktune: --arms is \"%s\", and no base of the task %s can read feedback", o->arms,
                     o->task);
    }
    if (o->model && !o->data) { example_exit(2, "thinktune: --model wants --data beside it"); }
    if (o->data && !o->model) { example_exit(2, "thinktune: --data wants --model beside it"); }
    if (o->lora_rank && !o->model) { example_exit(2, "thinktune: --lora-rank wants --model beside it"); }
    option_alone("thinktune", o->map && !o->lora_rank, "--map", "without --lora-rank");
    option_alone("thinktune", o->end_token && !o->data, "--end-token", "without --data");
    option_alone("thinktune", o->hold_out && !o->data, "--hold-out", "without --data");
    option_alone("thinktune", o->chat && !o->data, "--chat", "without --data");
    option_alone("thinktune", o->system && !o->data, "--system", "without --data");
    option_alone("thinktune", o->few_shot && !o->data, "--few-shot", "without --data");
    option_alone("thinktune", o->prefill && !o->data, "--prefill", "without --data");
    option_alone("thinktune", o->shift && !o->data, "--shift", "without --data");
    option_alone("thinktune", o->worked && !has_arm(o, "worked"), "--worked", "without the arm worked");
    option_alone("thinktune", has_arm(o, "worked") && !o->worked, "--arms worked", "without --worked");
    option_alone("thinktune", o->examples && !o->data, "--teacher-examples", "without --data");
    option_alone("thinktune", strcmp(o->separator, "\n\n") != 0 && !o->data, "--separator", "without --data");
    option_alone("thinktune", o->close_tags && !o->data, "--close-tags", "without --data");
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
/* Does it write its steps into metrics.jsonl? */
static int has_steps(const char *method) { return find_word("base,sft,worked", method, strlen(method)) < 0; }

static tt_status write_measures(app *a, tt_model *model, const char *method, tt_text *json) {
    CHECK(tt_text_format(json, "{\"seed\":%d,\"method\":\"%s\"", a->seed, method));
    CHECK(evaluate(a, model, method, json));
    if (strcmp(method, "sft") == 0) { CHECK(tt_text_format(json, ",\"num_tokens\":%r", a->sampled)); }
    if (strcmp(method, "base") == 0) { CHECK(write_gate(a, json)); }
    if (parallel_rank > 0) { return TT_OK; }
    CHECK(tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method)));
    CHECK(tt_text_append(json, "}\n", 2));
    return tt_file_write(a->ctx, result_path(a, a->seed, method), json->data, json->size);
}

static tt_status measure(app *a, tt_model *model, const char *method) {
    tt_text json = new_text(a);
    tt_status status = write_measures(a, model, method, &json);
    tt_text_free(&json);
    return status;
}

static int is_feedback_method(const char *name) {
    int i;
    for (i = 0; i < TT_N_FEEDBACK_METHODS; i++) {
        if (strcmp(tt_feedback_methods[i].name, name) == 0) { return 1; }
    }
    return 0;
}

/* Rollouts and tokens of it are told in its result: it has no steps of RL. */
static tt_status train_imitator(app *a, tt_model *student, tt_model_teacher *model) {
    tt_teacher teacher = tt_teacher_model(model);
    double tokens = 0;
    CHECK(train_sft(a, student, &teacher, &tokens));
    a->sampled = tokens;
    if (parallel_rank == 0) {
        CHECK(tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/sft", a->seed)));
        CHECK(save_student(a, student, path_of(a->o.out, "seed-%d/sft", a->seed)));
    }
    return measure(a, student, "sft");
}

/* The base behind other turns, which show how to work: what feedback may teach is there from the start. */
static tt_status measure_worked(app *a) {
    const char *turns = a->o.few_shot, *prefill = a->o.prefill;
    tt_status status;
    a->o.few_shot = a->o.worked;
    a->o.prefill = NULL;
    status = set_prompt(a);
    if (status == TT_OK) { status = measure(a, a->base, "worked"); }
    a->o.few_shot = turns;
    a->o.prefill = prefill;
    return status == TT_OK ? set_prompt(a) : status;
}

/* The student is trained, saved and measured. model: who teaches, NULL = nobody. */
static tt_status train_taught(app *a, const char *method, tt_model *student, tt_model_teacher *model,
                              int n_lines) {
    tt_teacher teacher;
    tt_trainer_desc desc;
    char metrics[PATH_SIZE];
    if (model) { teacher = tt_teacher_model(model); }
    desc = arm_desc(a, student, method, model ? &teacher : NULL);
    if (!a->data && a->o.beta == 0) {      /* only measured: a further forward pass of a small model */
        desc.measure_kl = 1;
        desc.grpo.kl = TT_KL_K3_CLAMP;
    }
    if (is_feedback_method(method)) { CHECK(open_feedback(a, method, &desc)); }
    CHECK(tt_make_dirs(a->ctx, path_of(a->o.out, "seed-%d/%s", a->seed, method)));
    strcpy(metrics, path_of(a->o.out, "metrics.jsonl"));
    CHECK(train_student(a, method, &desc, metrics, n_lines));
    if (parallel_rank == 0) {
        CHECK(save_student(a, student, path_of(a->o.out, "seed-%d/%s", a->seed, method)));
    }
    return measure(a, student, method);
}

static tt_status train_arm(app *a, const char *method, int n_lines) {
    int has_teacher = strcmp(method, "grpo") != 0;
    tt_model *student = new_student(a);
    tt_model_teacher *model = student && has_teacher ? make_teacher(a, a->base) : NULL;
    tt_status status = student && (model || !has_teacher) ? TT_OK : tt_error_status(a->ctx);
    if (status == TT_OK) {
        status = strcmp(method, "sft") == 0 ? train_imitator(a, student, model)
                                            : train_taught(a, method, student, model, n_lines);
    }
    close_feedback(a);
    tt_model_teacher_destroy(model);
    tt_model_destroy(student);
    return status;
}

/* ---- results ---- */
#include "report.h"

/* Methods side by side, as many as fit; the others below. */
static void print_table(const results *r) {
    enum { LABEL = 14 };
    char text[64];
    int width = r->n_seeds > 1 ? 16 : 11, most = (terminal_width() - LABEL) / width, f, m, first, n;
    if (most < 1) { most = 1; }
    for (first = 0; first < r->n_methods; first += n) {
        n = r->n_methods - first < most ? r->n_methods - first : most;
        printf("\n%-*s", LABEL, first ? "" : "alone, unseen");
        for (m = first; m < first + n; m++) { printf("%*s", width, r->methods[m]); }
        for (f = 0; f < N_FIGURES && has_figure(r, f); f++) {
            printf("\n%-*s", LABEL, heading_of(r, f));
            for (m = first; m < first + n; m++) {
                printf("%*s", width, cell(r, m, f, " +- ", text, sizeof text));
            }
        }
        printf("\n");
    }
}

static void print_response(const char *text) {
    while (*text) {
        size_t n = strcspn(text, "\n");
        if (n > 0) { say("    %.*s\n", (int)n, text); }
        text += n + (text[n] == '\n');
    }
}

/* A signs question has no mark of its own. */
static int ends_asking(const tt_json *transcript) {
    const char *question = tt_json_text(transcript, "question", "");
    return question[0] && question[strlen(question) - 1] == '?';
}

static void print_transcripts(const results *r, int n) {
    const tt_json *at[MAX_ARMS + 1];
    int m;
    for (m = 0; m < r->n_methods; m++) { at[m] = tt_json_get(r->of[m][0], "transcripts")->child; }
    for (; n > 0 && at[0]; n--) {
        printf("\n");
        print_wrapped(tt_json_text(at[0], "question", ""), 4);
        printf("%s\n", ends_asking(at[0]) ? "" : " ?");
        for (m = 0; m < r->n_methods && at[m]; m++) {
            say("  %s: %s\n", r->methods[m], tt_json_number(at[m], "right", 0) > 0 ? "right" : "wrong");
            print_response(tt_json_text(at[m], "response", ""));
            at[m] = at[m]->next;
        }
    }
}

/* What a student does that its base does not. One that has dropped its attempts has nothing to correct. */
enum { NOTHING_NEW, SHARPENS, CORRECTS, WORKS_FIRST, N_VERDICTS };

static int verdict_of(const results *r, int method, int seed) {
    const tt_json *base = tt_json_get(r->of[0][seed], "sampled");
    const tt_json *now = tt_json_get(r->of[method][seed], "sampled");
    double first = tt_json_number(now, "first_accuracy", 0) - tt_json_number(base, "first_accuracy", 0);
    int attempts = tt_json_number(now, "attempt_rate", 0) > 0.5;
    if (tt_json_number(now, "works_first", 0) > 0.5) { return WORKS_FIRST; }
    if (attempts && reflects_and_corrects(now)) { return CORRECTS; }
    return attempts && first > 0.05 ? SHARPENS : NOTHING_NEW;
}

static void print_verdicts(const results *r) {
    static const char *const what[N_VERDICTS] = {
        "does as its base", "sharpens its first attempt (by more than 0.05)",
        "reflects on its attempts and corrects them (reflection > 0.5, correction > 0.3)",
        "works before it answers, without an attempt"
    };
    int m, s, k;
    for (m = 1; m < r->n_methods; m++) {
        for (k = 0; k < N_VERDICTS; k++) {
            int n = 0;
            for (s = 0; s < r->n_seeds; s++) { n += verdict_of(r, m, s) == k; }
            if (n > 0) { say("%s %s: %d of %d seeds\n", r->methods[m], what[k], n, r->n_seeds); }
        }
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
        print_verdicts(&r);
        printf("\n");
        print_wrapped(budget.data, 4);
        say("\nwritten: %s/summary.json, %sreport.html, curves.svg\n", a->o.out,
            trains(&r) ? "metrics.jsonl, " : "");
    }
    tt_text_free(&budget);
    free_results(a, &r);
    return status;
}

/* ---- the expected time ---- */
/* Seconds on two quiet cores for so many tokens through so many weights; forward and backward count as three.
 * Small matrices are slow. */
static double token_work(double tokens, double weights) {
    return tokens * weights * (weights < 1e7 ? 1.4e-11 : 5e-12);
}

static double base_weights(const app *a) {
    if (a->base) { return (double)tt_model_size(a->base); }
    return (double)a->o.layers * a->o.hidden * (4.0 * a->o.hidden + 3.0 * a->o.inner);
}

/* Of the built-in tasks a plain answer has 6 tokens, one with reflection 70; of others nothing is known. */
static double response_tokens(const app *a, const char *method) {
    if (a->o.data) { return 0.5 * a->o.length; }
    return strcmp(method, "grpo") == 0 || strcmp(method, "base") == 0 ? 6 : 70;
}

static double measure_work(const app *a, const char *method) {
    double response = response_tokens(a, method), guided = response + 0.5 * a->o.teacher_length;
    double tokens = 2 * a->o.questions * response;
    if (strcmp(method, "base") == 0) { tokens += a->o.gate_questions * guided; }
    return 1 + token_work(3 * tokens, base_weights(a));
}

static double arm_work(const app *a, const char *method) {
    double trained = strcmp(method, "worked") == 0 ? 0 : a->o.steps;
    double tokens = trained * a->o.prompts * a->o.generations * response_tokens(a, method);
    return 1 + token_work((3 + 3 * a->o.iterations) * tokens, base_weights(a)) + measure_work(a, method);
}

static double base_work(const app *a) {
    return a->o.data ? 0 : token_work(3.0 * a->o.pretrain_steps * a->o.pretrain_tokens, base_weights(a));
}

/* Of a built-in task before any work, of others as soon as the size of the model is known. */
static void plan_run(app *a) {
    int i;
    if (a->whole > 0) { return; }
    a->whole = base_work(a) + measure_work(a, "base");
    for (i = 0; i < a->n_arms; i++) { a->whole += arm_work(a, a->arms[i]); }
    a->whole *= a->o.seeds;
    whole_begin(a);
}

/* A job of so much work is done, now or by an earlier start. */
static void job_done(app *a, double work, int now) {
    a->done += work;
    if (!now) { a->whole_from += work; }
    a->part = 0;
}

/* ---- all seeds ---- */
static tt_status run_seed(app *a) {
    int i, needed = parallel_any(!a->o.resume || !tt_file_exists(result_path(a, a->seed, "base")));
    if (needed) { CHECK(measure(a, a->base, "base")); }
    job_done(a, measure_work(a, "base"), needed);
    for (i = 0; i < a->n_arms; i++) {
        const char *arm = a->arms[i];
        needed = parallel_any(!a->o.resume || !tt_file_exists(result_path(a, a->seed, arm)));
        a->part = arm_work(a, arm) - measure_work(a, arm);
        if (needed) {
            CHECK(strcmp(arm, "worked") == 0 ? measure_worked(a) : train_arm(a, arm, a->n_lines));
        }
        a->n_lines += has_steps(arm) ? a->o.steps : 0;
        job_done(a, arm_work(a, arm), needed);
    }
    return TT_OK;
}

/* What an earlier run left. */
static void remove_results(app *a) {
    int s, i;
    if (tt_file_exists(path_of(a->o.out, "metrics.jsonl"))) {
        say("the results in %s are replaced\n", a->o.out);
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
}

/* A fresh start forgets the last results. */
static tt_status prepare_folder(app *a) {
    int *resume = &a->o.resume;
    CHECK(describe_settings(a->ctx, "thinktune", option_list, N_OPTIONS, "--out,--resume,--threads,--map",
                            "--data,--teacher-examples,--few-shot,--worked,--shift", &a->settings));
    CHECK(check_settings(a->ctx, a->o.out, &a->settings, path_of(a->o.out, "metrics.jsonl"), resume));
    if (*resume) { return TT_OK; }
    CHECK(check_settings(a->ctx, a->o.out, &a->settings, result_path(a, a->o.first_seed, "base"), resume));
    if (*resume) { return TT_OK; }
    remove_results(a);
    return write_settings(a->ctx, a->o.out, &a->settings);
}

/* One seed, from its base to its students. */
static tt_status run_from_base(app *a) {
    CHECK(open_base(a));
    plan_run(a);
    job_done(a, a->base_work, 1);
    return run_seed(a);
}

static tt_status run(app *a) {
    const char *at = a->o.arms;
    while (*at) {
        size_t size = strcspn(at, ",");
        snprintf(a->arms[a->n_arms++], sizeof a->arms[0], "%.*s", (int)size, at);
        at += size + (at[size] == ',');
    }
    if (parallel_rank == 0) { CHECK(prepare_folder(a)); }
    a->o.resume = parallel_any(parallel_rank == 0 && a->o.resume);      /* when the folder is clean */
    a->on_step = record_rollouts;
    if (!a->o.data) { plan_run(a); }
    for (a->seed = a->o.first_seed; a->seed < a->o.first_seed + a->o.seeds; a->seed++) {
        tt_status status;
        a->part = a->base_work = base_work(a);
        status = run_from_base(a);
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
    if (reads_arms(&given)) { given.reads = 0.15; }
    return experiment_main(&a, &given, "thinktune", run);
}
