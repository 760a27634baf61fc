/* web.c - GRPO and ThinkTuning in one browser tab: the C side of build/web/index.html; the page is web.html.
 *
 *     make web            (then open build/web/index.html)
 *
 * Compiled for WebAssembly it exports the functions web_*; the page calls them in a Worker, one at a time,
 * and each answers with one JSON object. Compiled for this machine it is a program with the same functions:
 *
 *     build/web/native base DIR               pretrains the base of the page (3 minutes on one core) into DIR
 *     build/web/native train DIR SEED STEPS   prints what the page would be told, line by line; with
 *                                             TT_KERNEL=simd128 digit for digit
 *
 * The task is "signs" with three numbers (see tasks.h): put + or - before each so that the sum is the target.
 * Two students start from the same base and get the same questions. One learns by GRPO. Of the other's tries
 * some are continued by a teacher, the frozen base under another prompt. */
#if !defined(__wasm__) && !defined(TTI_SIMD128)
#define TTI_SIMD128 1                  /* the kernels of the page, also here: the same numbers */
#endif
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "evaluate.h"
#include "tasks.h"
#include <ctype.h>

#ifdef __wasm__
#define EXPORT(name) __attribute__((export_name(#name)))
#else
#define EXPORT(name)
#endif
#define CHECK(call) do { tt_status check_ = (call); if (check_ != TT_OK) { return check_; } } while (0)

enum { NUMBERS = 3, PROMPTS = 8, GENERATIONS = 8, LENGTH = 96, MOST_QUESTIONS = 64, ROOM = 200 };
enum { GRPO, THINKTUNING, BASE, N_MODELS };

static struct web {
    tt_context *ctx;
    tt_signs *signs;
    tt_task task;
    tt_tokenizer *tokenizer;
    tt_model *models[N_MODELS];        /* [GRPO], [THINKTUNING]: the students   */
    tt_model_teacher *mentor;
    tt_teacher teacher;
    tt_trainer *trainers[2];
    int32_t end;
    tt_text json;                      /* the answer to the last call         */
} w;
static char question_room[ROOM];       /* where the page writes a question      */

/* ---- answers ---- */
static const char *failed(void) {
    const char *why = tt_error(w.ctx);
    w.json.size = 0;
    if (tt_text_format(&w.json, "{\"error\":") != TT_OK || tt_text_json(&w.json, why, strlen(why)) != TT_OK
        || tt_text_append(&w.json, "}", 1) != TT_OK) {
        return "{\"error\":\"out of memory\"}";
    }
    return w.json.data;
}

static const char *answer(tt_status status) { return status == TT_OK ? w.json.data : failed(); }

/* ---- what a response looks like: {"right":1,"parts":["student's","teacher's"]} ---- */
static tt_status add_part(const int32_t *tokens, int n, const char *before) {
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = w.ctx;
    status = tt_decode(w.tokenizer, tokens, (size_t)n, 1, &text);
    if (status == TT_OK) { status = tt_text_append(&w.json, before, strlen(before)); }
    if (status == TT_OK) { status = tt_text_json(&w.json, text.data ? text.data : "", text.size); }
    tt_text_free(&text);
    return status;
}

static tt_status add_response(int right, const int32_t *tokens, int n, int by_student, const char *before) {
    CHECK(tt_text_format(&w.json, "%s{\"right\":%d,\"parts\":", before, right));
    CHECK(add_part(tokens, by_student, "["));
    if (by_student < n) { CHECK(add_part(tokens + by_student, n - by_student, ",")); }
    return tt_text_format(&w.json, "]}");
}

/* ---- a question of the visitor's: "make 5 from 2 2 7" ---- */
/* Words that stand at place i of a question; is this one of them? */
static int word_fits(const char *word, int i) {
    char *end;
    long number = strtol(word, &end, 10);
    if (i == 0 || i == 2) { return strcmp(word, i ? "from" : "make") == 0; }
    return !*end && (i == 1 ? labs(number) <= 9 * NUMBERS : number >= 1 && number <= 9);
}

/* Is it one token, with the space before it? */
static tt_status word_known(const char *word, int *known) {
    tt_ids ids = TT_INIT;
    char spaced[ROOM + 1];
    tt_status status;
    ids.ctx = w.ctx;
    snprintf(spaced, sizeof spaced, " %s", word);
    status = tt_encode(w.tokenizer, spaced, strlen(spaced), TT_SPECIAL_TEXT, &ids);
    *known = ids.size == 1;
    tt_ids_free(&ids);
    return status;
}

static tt_status read_question(const char *from, tt_text *question) {
    static const char form[] = "ask like this: make 5 from 2 2 7 "
                               "(three numbers from 1 to 9, and a sum from -27 to 27)";
    char words[ROOM], *at, *word;
    int n = 0, known, fits = 1;
    for (at = words; *from && at < words + ROOM - 1; from++) {
        *at++ = strchr(" ,;?.:\t\n", *from) ? ' ' : (char)tolower((unsigned char)*from);
    }
    *at = 0;
    for (word = strtok(words, " "); word; word = strtok(NULL, " "), n++) {
        CHECK(word_known(word, &known));
        if (!known) {
            return tt_fail(w.ctx, TT_ERR_ARG, "the models do not know the word \"%s\"; %s", word, form);
        }
        fits = fits && n < 3 + NUMBERS && word_fits(word, n);
        CHECK(tt_text_format(question, " %s", word));
    }
    return fits && n == 3 + NUMBERS ? TT_OK : tt_fail(w.ctx, TT_ERR_ARG, "%s", form);
}

/* Appends a model's most likely response to the question. */
static tt_status respond(tt_model *model, const char *question, int *right, const char *before) {
    static const char prompt[] = "<user>{question}<student>";
    tt_ids ids = TT_INIT;
    tt_request request = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tt_completions out = TT_INIT;
    tt_text text = TT_INIT;
    tt_reward_input in = TT_INIT;
    float reward = 0;
    tt_status status;
    ids.ctx = text.ctx = w.ctx;
    status = tt_encode_prompt(w.tokenizer, prompt, sizeof prompt - 1, question, strlen(question), &ids);
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    sampling.greedy = 1;
    sampling.max_new_tokens = LENGTH;
    sampling.stop_tokens = &w.end;
    sampling.n_stop_tokens = 1;
    if (status == TT_OK) { status = tt_generate(model, &request, 1, &sampling, &out); }
    if (status == TT_OK) {
        const tt_completion *c = out.items;
        status = tt_decode(w.tokenizer, c->tokens, (size_t)(c->length - c->stopped), 1, &text);
        in.question = question;
        in.response = text.data ? text.data : "";
        in.stopped = c->stopped;
        if (status == TT_OK) { status = w.task.reward(w.task.user, &in, &reward); }
        *right = reward > 0.5f;
        if (status == TT_OK) { status = add_response(*right, c->tokens, c->length, c->length, before); }
    }
    tt_completions_free(&out);
    tt_text_free(&text);
    tt_ids_free(&ids);
    return status;
}

static tt_status respond_all(const char *question) {
    int right;
    CHECK(tt_text_format(&w.json, "{\"question\":"));
    CHECK(tt_text_json(&w.json, question + 1, strlen(question + 1)));
    CHECK(respond(w.models[GRPO], question, &right, ",\"grpo\":"));
    CHECK(respond(w.models[THINKTUNING], question, &right, ",\"thinktuning\":"));
    CHECK(respond(w.models[BASE], question, &right, ",\"base\":"));
    return tt_text_append(&w.json, "}", 1);
}

EXPORT(web_room) char *web_room(void) { return question_room; }
/* What base and students answer now; the question stands in web_room. */
EXPORT(web_ask) const char *web_ask(void) {
    tt_text question = TT_INIT;
    tt_status status;
    question.ctx = w.ctx;
    w.json.size = 0;
    question_room[ROOM - 1] = 0;
    status = read_question(question_room, &question);
    if (status == TT_OK) { status = respond_all(question.data); }
    tt_text_free(&question);
    return answer(status);
}

/* ---- the start ---- */
/* The first held-out question that the base answers wrongly. */
static tt_status wrong_question(tt_text *question) {
    tt_text gold = TT_INIT;
    int i, right = 1;
    tt_status status = TT_OK;
    gold.ctx = w.ctx;
    for (i = 0; i < MOST_QUESTIONS && right && status == TT_OK; i++) {
        question->size = w.json.size = 0;
        status = w.task.question(w.task.user, 1, (uint64_t)i, question, &gold);
        if (status == TT_OK) { status = respond(w.models[BASE], question->data, &right, ""); }
    }
    w.json.size = 0;
    tt_text_free(&gold);
    return status;
}

static tt_status open_task(void) {
    tt_signs_desc desc = TT_INIT;
    desc.min_n = desc.max_n = NUMBERS;
    desc.seed = 1;
    if (!w.ctx) { w.ctx = tt_create(NULL); }
    w.json.ctx = w.ctx;
    w.json.size = 0;
    if (!w.signs) { w.signs = tt_signs_create(w.ctx, &desc); }
    if (w.signs) { w.task = tt_task_signs(w.signs); }
    return w.signs ? TT_OK : tt_error_status(w.ctx);
}

static tt_status new_students(void) {
    int arm;
    for (arm = GRPO; arm <= THINKTUNING; arm++) {
        w.models[arm] = tt_model_create(w.ctx, tt_model_config_get(w.models[BASE]), 0);
        if (!w.models[arm]) { return tt_error_status(w.ctx); }
        CHECK(tt_model_assign(w.models[arm], w.models[BASE]));
    }
    return TT_OK;
}

static tt_status open_base(const char *dir) {
    tt_teacher_prompt prompt = TT_INIT;
    char path[1000];
    prompt.prompt_template = TT_SIGNS_TEACHER_TEMPLATE;
    prompt.stop_token = TT_SIGNS_TEACHER_STOP;
    prompt.max_new_tokens = LENGTH;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    CHECK(open_task());
    w.models[BASE] = tt_model_load(w.ctx, dir);
    w.tokenizer = w.models[BASE] ? tt_tokenizer_load(w.ctx, path) : NULL;
    w.mentor = w.tokenizer ? tt_model_teacher_create(w.models[BASE], w.tokenizer, &prompt) : NULL;
    if (!w.mentor) { return tt_error_status(w.ctx); }
    w.teacher = tt_teacher_model(w.mentor);
    w.end = tt_token_id(w.tokenizer, w.task.end_token);
    return new_students();
}

static tt_status open_page(const char *dir) {
    tt_text question = TT_INIT;
    tt_status status = open_base(dir);
    question.ctx = w.ctx;
    if (status == TT_OK) { status = wrong_question(&question); }
    if (status == TT_OK) {
        status = tt_text_format(&w.json,
                                "{\"weights\":%d,\"kernel\":\"%s\",\"threads\":%d,\"tries\":%d,\"first\":",
                                (int)tt_model_size(w.models[BASE]), tt_kernel(w.ctx), tt_threads(w.ctx),
                                PROMPTS * GENERATIONS);
    }
    if (status == TT_OK) { status = respond_all(question.data); }
    if (status == TT_OK) { status = tt_text_append(&w.json, "}", 1); }
    tt_text_free(&question);
    return status;
}

/* The base in the folder "base", which the page shows to this module as files. */
EXPORT(web_open) const char *web_open(void) { return answer(open_page("base")); }

/* ---- training ---- */
/* A linear schedule ends after a third of total_steps; with off_eps next to 0 the
 * teacher leaves just then. */
static tt_trainer *new_trainer(int arm, int feedback, int leaves, int seed) {
    tt_trainer_desc d = TT_INIT;
    d.model = w.models[arm];
    d.tokenizer = w.tokenizer;
    d.task = &w.task;
    d.teacher = arm == THINKTUNING && feedback > 0 && leaves > 0 ? &w.teacher : NULL;
    d.seed = (uint64_t)seed;
    d.prompts_per_step = PROMPTS;
    d.grpo.num_generations = GENERATIONS;
    d.grpo.max_completion_length = LENGTH;
    d.grpo.aas = TT_AAS_RELEASED;
    d.think.init_pct = (float)feedback / GENERATIONS;
    d.think.min_pct = 0.01f;
    d.think.off_eps = 1e-6f;
    d.think.total_steps = 3 * leaves;
    d.think.seed = (uint64_t)seed;
    d.adamw.weight_decay = 0.01f;
    d.adamw.max_grad_norm = 1;
    d.schedule.lr = 5e-4f;
    return tt_trainer_create(w.ctx, &d);
}

static tt_status start(int feedback, int leaves, int seed) {
    int arm;
    for (arm = GRPO; arm <= THINKTUNING; arm++) {
        tt_trainer_destroy(w.trainers[arm]);
        w.trainers[arm] = NULL;
        CHECK(tt_model_assign(w.models[arm], w.models[BASE]));
    }
    for (arm = GRPO; arm <= THINKTUNING; arm++) {
        w.trainers[arm] = new_trainer(arm, feedback, leaves, seed);
        if (!w.trainers[arm]) { return tt_error_status(w.ctx); }
    }
    return tt_text_format(&w.json, "{}");
}

/* Both students become the base again. The teacher continues `feedback` of 8 tries, fewer from step to step
 * (but one at least), none from step `leaves` on. */
EXPORT(web_start) const char *web_start(int feedback, int leaves, int seed) {
    w.json.size = 0;
    return answer(start(feedback, leaves, seed));
}

/* One question of the step, another one at each step, and all tries at it. */
static tt_status add_tries(const tt_rollouts *rollouts, int step) {
    int group = step % rollouts->n_groups, i;
    const char *question = rollouts->questions[group];
    CHECK(tt_text_format(&w.json, ",\"question\":"));
    CHECK(tt_text_json(&w.json, question + 1, strlen(question + 1)));
    CHECK(tt_text_format(&w.json, ",\"tries\":["));
    for (i = 0; i < GENERATIONS; i++) {
        const tt_rollout *r = &rollouts->items[group * GENERATIONS + i];
        const int32_t *response = r->tokens + r->prompt_length;
        int by_student = r->guided ? r->attempt_length : r->response_length;
        CHECK(add_response(r->rewards[0] > 0.5f, response, r->response_length, by_student, i ? "," : ""));
    }
    return tt_text_format(&w.json, "]}");
}

static tt_status train_step(int arm) {
    tt_step_metrics m;
    if (!w.trainers[arm]) { return tt_fail(w.ctx, TT_ERR_ARG, "web_step before web_start"); }
    CHECK(tt_trainer_step(w.trainers[arm], &m));
    CHECK(tt_text_format(&w.json, "{\"step\":%d,\"reward\":%r,\"reflection\":%r,\"correction\":%r", m.step,
                         m.think.own_reward, m.reflection_rate, m.correction_rate));
    CHECK(tt_text_format(&w.json, ",\"length\":%r,\"guided\":%d,\"guided_reward\":%r", m.mean_length,
                         m.think.n_guided, m.think.guided_reward));
    return add_tries(tt_trainer_rollouts(w.trainers[arm]), m.step);
}

EXPORT(web_step) const char *web_step(int arm) {
    w.json.size = 0;
    return answer(train_step(arm));
}

/* ---- the examination: n questions that none of them has seen, alone, at temperature 1 ---- */
static tt_status examine(int model, int n) {
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation e;
    d.n_questions = n;
    d.max_new_tokens = LENGTH;
    d.seed = 1;
    CHECK(tt_evaluate(w.models[model], w.tokenizer, &w.task, &d, &e));
    return tt_evaluation_json(&e, &w.json);
}

EXPORT(web_exam) const char *web_exam(int model, int n) {
    w.json.size = 0;
    return answer(examine(model, n));
}

/* ---- this machine: the base, and the page's numbers without the page ---- */
#ifndef __wasm__
typedef struct pack { tt_ids tokens, offsets; tt_text mask; } pack;

static tt_status encode(const char *text, size_t size, tt_ids *out) {
    return tt_encode(w.tokenizer, text, size, TT_SPECIAL_PARSE, out);
}

/* Documents until the step has its tokens; what follows the question is to be learned. */
static tt_status pack_step(pack *p, int step, double at, size_t enough) {
    tt_text text = TT_INIT;
    uint64_t index = (uint64_t)step << 20;
    int32_t end = 0;
    tt_status status = TT_OK;
    text.ctx = p->tokens.ctx = p->offsets.ctx = p->mask.ctx = w.ctx;
    p->tokens.size = p->offsets.size = p->mask.size = 0;
    while (status == TT_OK && p->tokens.size < enough) {
        size_t from = 0, first;
        text.size = 0;
        status = tt_ids_append(&p->offsets, &end, 1);
        if (status == TT_OK) { status = tt_signs_document(w.signs, index++, at, &text, &from); }
        if (status == TT_OK) { status = encode(text.data, from, &p->tokens); }
        first = p->tokens.size;
        if (status == TT_OK) { status = encode(text.data + from, text.size - from, &p->tokens); }
        while (status == TT_OK && p->mask.size < p->tokens.size) {
            status = tt_text_append(&p->mask, p->mask.size < first ? "\0" : "\1", 1);
        }
        end = (int32_t)p->tokens.size;
    }
    if (status == TT_OK) { status = tt_ids_append(&p->offsets, &end, 1); }
    tt_text_free(&text);
    return status;
}

static tt_status pretrain_step(tt_optimizer *optimizer, const pack *p, float lr, double *loss_out) {
    tt_batch_desc desc = TT_INIT;
    tt_tensor *loss, *logprobs;
    desc.n_sequences = (int)p->offsets.size - 1;
    desc.offsets = p->offsets.data;
    desc.tokens = p->tokens.data;
    desc.mask = (const unsigned char *)p->mask.data;
    logprobs = tt_model_logprobs(w.models[BASE], tt_batch_create(w.ctx, &desc), 1, NULL);
    loss = tt_neg(w.ctx, tt_mean(w.ctx, logprobs));
    CHECK(tt_backward(w.ctx, loss));
    *loss_out = tt_item(loss);
    tt_step_reset(w.ctx);
    return tt_optimizer_step(optimizer, lr, NULL);
}

static tt_status pretrain(tt_optimizer *optimizer) {
    enum { STEPS = 12000, TOKENS = 500, SAY_EVERY = 2000 };
    tt_schedule schedule = TT_INIT;
    pack p = TT_INIT;
    double loss = 0, sum = 0;
    int step;
    tt_status status = TT_OK;
    schedule.type = TT_LINEAR;
    schedule.lr = 4e-3f;
    schedule.total_steps = STEPS;
    schedule.warmup_steps = 100;
    for (step = 0; step < STEPS && status == TT_OK; step++) {
        status = pack_step(&p, step, (double)step / STEPS, TOKENS);
        if (status == TT_OK) {
            status = pretrain_step(optimizer, &p, tt_learning_rate(&schedule, step), &loss);
        }
        sum += loss;
        if ((step + 1) % SAY_EVERY == 0) {
            printf("base: step %d of %d, loss %.3f\n", step + 1, STEPS, sum / SAY_EVERY);
            fflush(stdout);
            sum = 0;
        }
    }
    tt_ids_free(&p.tokens);
    tt_ids_free(&p.offsets);
    tt_text_free(&p.mask);
    return status;
}

static tt_status make_base(const char *dir) {
    tt_model_config config = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    tt_save_desc save = TT_INIT;
    tt_optimizer *optimizer;
    tt_status status;
    CHECK(open_task());
    w.tokenizer = tt_signs_tokenizer(w.signs);
    if (!w.tokenizer) { return tt_error_status(w.ctx); }
    config.vocab_size = tt_vocab_size(w.tokenizer);
    config.num_hidden_layers = 3;
    config.hidden_size = 64;
    config.num_attention_heads = 2;
    config.intermediate_size = 160;
    config.max_position_embeddings = 256;
    config.bos_token_id = -1;
    config.eos_token_id = tt_token_id(w.tokenizer, "<end>");
    adamw.beta2 = 0.98f;
    adamw.weight_decay = 0.01f;
    adamw.max_grad_norm = 1;
    save.dtype = TT_BF16;
    w.models[BASE] = tt_model_create(w.ctx, &config, 1);
    optimizer = w.models[BASE] ? tt_adamw_create(w.models[BASE], &adamw) : NULL;
    status = optimizer ? pretrain(optimizer) : tt_error_status(w.ctx);
    tt_optimizer_destroy(optimizer);
    return status == TT_OK ? tt_model_save_as(w.models[BASE], w.tokenizer, dir, &save) : status;
}

static int said(const char *json) {
    puts(json);
    return strncmp(json, "{\"error\"", 8) != 0;
}

static tt_status train(const char *dir, int seed, int steps) {
    enum { FEEDBACK = 2, LEAVES = 10, QUESTIONS = 200 };
    int good = said(answer(open_page(dir))) && said(web_start(FEEDBACK, LEAVES, seed)), i;
    for (i = 0; i < steps && good; i++) { good = said(web_step(GRPO)) && said(web_step(THINKTUNING)); }
    for (i = 0; i < N_MODELS && good; i++) { good = said(web_exam(i, QUESTIONS)); }
    return good ? TT_OK : tt_error_status(w.ctx);
}

static int close_all(tt_status status) {
    int i;
    if (status != TT_OK) { fprintf(stderr, "web: %s\n", tt_error(w.ctx)); }
    for (i = 0; i < 2; i++) { tt_trainer_destroy(w.trainers[i]); }
    tt_model_teacher_destroy(w.mentor);
    for (i = 0; i < N_MODELS; i++) { tt_model_destroy(w.models[i]); }
    tt_tokenizer_destroy(w.tokenizer);
    tt_signs_destroy(w.signs);
    tt_text_free(&w.json);
    tt_destroy(w.ctx);
    return status != TT_OK;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "base") == 0) { return close_all(make_base(argv[2])); }
    if (argc == 5 && strcmp(argv[1], "train") == 0) {
        return close_all(train(argv[2], atoi(argv[3]), atoi(argv[4])));
    }
    fprintf(stderr, "usage: web base DIR | web train DIR SEED STEPS\n");
    return 2;
}
#endif
