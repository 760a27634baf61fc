/* calculator.c - a model of random weights learns to use a tool, by GRPO alone: build/calculator, in a minute
 * It is asked "<q> 12 * 7<a>" and cannot multiply. But where it writes "<calc> 12 * 7 =", the environment
 * writes 84 behind it, tokens that the loss leaves out, and the response goes on. The last lines are answers
 * to questions that it was never trained on. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

enum { STEPS = 1200, LEAST = 2, MOST = 12, HELD_OUT = 5, LENGTH = 10 };

/* ---- the environment: a calculator that answers where a calculation ends ---- */
static tt_status calculate(void *user, const tt_request *request, const int32_t *response, int length,
                           tt_ids *out) {
    const tt_tokenizer *tokenizer = (const tt_tokenizer *)user;
    tt_text text = TT_INIT;
    tt_status status;
    char answer[32];
    int a, b, end = 0;
    (void)request;
    text.ctx = out->ctx;
    status = tt_decode(tokenizer, response, (size_t)length, 0, &text);
    if (status == TT_OK) { sscanf(text.data, "<calc> %d * %d =%n", &a, &b, &end); }
    if (end > 0 && end == (int)text.size) {
        snprintf(answer, sizeof answer, " %d", a * b);
        status = tt_encode(tokenizer, answer, strlen(answer), TT_SPECIAL_TEXT, out);
    }
    tt_text_free(&text);
    return status;
}

/* ---- the task: products of numbers from 2 to 12, of which every fifth is held out ---- */
static tt_status ask(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    int n = MOST - LEAST + 1, place, a, b;
    (void)user;
    place = (int)(index % (uint64_t)(n * n / HELD_OUT * (split ? 1 : HELD_OUT - 1)));
    place = split ? place * HELD_OUT : place + place / (HELD_OUT - 1) + 1;
    a = LEAST + place / n;
    b = LEAST + place % n;
    if (tt_text_format(question, " %d * %d", a, b) != TT_OK) { return TT_ERR_MEM; }
    return tt_text_format(answer, "<calc> %d * %d = %d", a, b, a * b);
}

/* All for being right, and a little for each word with which it begins like the calculation, or nobody would
 * ever come upon one. */
static tt_status judge(void *user, const tt_reward_input *in, float *reward) {
    size_t at = 0, next;
    int words = 0;
    (void)user;
    for (; words < 5; words++, at = next) {
        next = at + 1 + strcspn(in->answer + at + 1, " ");
        if (strncmp(in->answer, in->response, next) != 0 || !strchr(" ", in->response[next])) { break; }
    }
    *reward = in->stopped && strcmp(in->response, in->answer) == 0 ? 1 : 0.1f * (float)words;
    return TT_OK;
}

static tt_tokenizer *make_tokenizer(tt_context *ctx) {
    static const char *const special[] = {"<q>", "<a>", "<calc>", "<end>"};
    static const char *const words[] = {" 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9", " 10", " 11", " 12",
                                        " *", " ="};
    tt_tokenizer_desc desc = TT_INIT;
    desc.special_tokens = special;
    desc.n_special_tokens = 4;
    return tt_tokenizer_words(ctx, &desc, words, 13);
}

static tt_model *make_model(tt_context *ctx, int vocab_size) {
    tt_model_config config = TT_INIT;
    config.vocab_size = vocab_size;
    config.hidden_size = 64;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 4;
    config.intermediate_size = 128;
    config.max_position_embeddings = 32;
    return tt_model_create(ctx, &config, 1);
}

/* ---- greedy answers to the questions that were held out ---- */
static tt_status examine(tt_model *model, const tt_tokenizer *tokenizer, const tt_task *task, int n) {
    tt_context *ctx = tt_model_context(model);
    int32_t end = tt_token_id(tokenizer, task->end_token);
    tt_prompts prompts;
    tt_sampling greedy = TT_INIT;
    tt_completions out = TT_INIT;
    tt_text text = TT_INIT;
    tt_status status = tt_prompts_create(ctx, task, tokenizer, n, &prompts);
    int i, right = 0;
    text.ctx = ctx;
    for (i = 0; i < n && status == TT_OK; i++) { status = tt_prompts_set(&prompts, i, 1, (uint64_t)i); }
    greedy.greedy = 1;
    greedy.max_new_tokens = LENGTH;
    greedy.stop_tokens = &end;
    greedy.n_stop_tokens = 1;
    greedy.environment = calculate;
    greedy.environment_user = (void *)tokenizer;
    if (status == TT_OK) { status = tt_generate(model, prompts.requests, n, &greedy, &out); }
    for (i = 0; i < n && status == TT_OK; i++) {
        const tt_completion *c = &out.items[i];
        const char *want = tt_prompts_answer(&prompts, i);
        text.size = 0;
        status = tt_decode(tokenizer, c->tokens, (size_t)(c->length - c->stopped), 0, &text);
        if (status != TT_OK) { break; }
        right += c->stopped && strcmp(text.data, want) == 0;
        if (i % 8 == 0) { printf("%s ?  %s\n", tt_prompts_question(&prompts, i), text.data); }
    }
    if (status == TT_OK) { printf("%d of %d questions never seen are right\n", right, n); }
    tt_completions_free(&out);
    tt_prompts_free(&prompts);
    tt_text_free(&text);
    return status;
}

int main(void) {
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = make_tokenizer(ctx);
    tt_model *model = tokenizer ? make_model(ctx, tt_vocab_size(tokenizer)) : NULL;
    tt_task task = TT_INIT;
    tt_trainer_desc desc = TT_INIT;
    tt_trainer *trainer;
    tt_status status;
    task.question = ask;
    task.reward = judge;
    task.prompt_template = "<q>{question}<a>";
    task.end_token = "<end>";
    desc.model = model;
    desc.tokenizer = tokenizer;
    desc.task = &task;
    desc.environment = calculate;
    desc.environment_user = tokenizer;
    desc.prompts_per_step = 32;
    desc.grpo.max_completion_length = LENGTH;
    desc.grpo.entropy_coef = 0.02f;      /* or all soon write one calculation, whatever the question */
    desc.adamw.max_grad_norm = 1;
    desc.schedule.lr = 2e-3f;
    desc.schedule.type = TT_COSINE;
    desc.schedule.total_steps = STEPS;
    trainer = model ? tt_trainer_create(ctx, &desc) : NULL;
    status = trainer ? TT_OK : tt_error_status(ctx);
    for (int step = 0; step < STEPS && status == TT_OK; step++) {
        tt_step_metrics m;
        status = tt_trainer_step(trainer, &m);
        if (status == TT_OK && step % 50 == 0) { printf("step %3d  reward %.2f\n", step, m.grpo.reward); }
    }
    if (status == TT_OK) { status = examine(model, tokenizer, &task, 24); }
    if (status != TT_OK) { fprintf(stderr, "calculator: %s\n", tt_error(ctx)); }
    tt_trainer_destroy(trainer);
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
    return status == TT_OK ? 0 : 1;
}
