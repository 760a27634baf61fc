/* think.c - ThinkTuning from the first attempt to the last update, in one page of code.
 *
 *     build/think           (about 15 seconds; it takes a seed, steps of reading and steps of training)
 *
 * A small model is asked "<q> 3 7 5<a>" and shall end with the last digit of the sum, 5. It has read guesses,
 * " 8<end>", and, one document in four, notes, which add up and drop the tens, "<note> 8 wait 3 0 5<end>":
 * it knows how to check, and does not when it is asked. It is trained twice by equally many tries: with GRPO
 * alone, and with a teacher, who first continues some of them, " wait 3 0 5", and then leaves. The last two
 * lines say what each student does alone with new questions. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

#define CHECK(call) do { tt_status check_ = (call); if (check_ != TT_OK) { return check_; } } while (0)
enum { READ = 2500, STEPS = 40, DOCUMENTS = 32, NOTES = 4, PROMPTS = 16, GROUP = 8, LENGTH = 16, TEST = 500 };
enum { QUESTION, ANSWER, NOTE, END, DIGITS = 3, ASKED = DIGITS + 2, RIGHT = ASKED + 1 + DIGITS, WAIT = 10 };

/* <q> 3 7 5<a>, ASKED tokens, and what a note would say: a guess, wait 3 0 5, of which the last is right. */
typedef struct question { int32_t tokens[RIGHT + 1]; } question;

typedef struct learner {
    tt_context *ctx;
    tt_tokenizer *tokenizer;
    tt_model *base, *model;
    tt_optimizer *optimizer;
    question questions[TEST];
    tt_rollouts tries;                        /* at these questions */
    tt_text words, verdict;
    tt_grpo_config grpo;
    tt_think_config think;
    tt_augment augment;                       /* teacher NULL: GRPO alone */
    int32_t word[WAIT + 1];                   /* token ids of the digits and of wait */
    uint64_t seed;
} learner;

/* ---- a tokenizer that knows the words of the task, and a model: of random weights, or as the base ---- */
static tt_status make_tokenizer(learner *l) {
    static const char *const special[] = {"<q>", "<a>", "<note>", "<end>"};
    static const char *const words[] = {" 0", " 1", " 2", " 3", " 4", " 5", " 6", " 7", " 8", " 9", " wait"};
    tt_tokenizer_desc desc = {.special_tokens = special, .n_special_tokens = 4};
    l->augment.tokenizer = l->tokenizer = tt_tokenizer_words(l->ctx, &desc, words, 11);
    if (!l->tokenizer) { return tt_error_status(l->ctx); }
    for (int i = 0; i <= WAIT; i++) { l->word[i] = tt_token_id(l->tokenizer, words[i]); }
    return TT_OK;
}

static tt_status make_model(learner *l) {
    tt_model_config config = {.hidden_size = 48, .num_hidden_layers = 2, .num_attention_heads = 3};
    tt_adamw_desc adamw = {.max_grad_norm = 1};
    config.vocab_size = tt_vocab_size(l->tokenizer);
    tt_optimizer_destroy(l->optimizer);
    tt_model_destroy(l->model);
    l->model = tt_model_create(l->ctx, &config, l->seed);
    l->optimizer = l->model ? tt_adamw_create(l->model, &adamw) : NULL;
    return l->optimizer && l->base ? tt_model_assign(l->model, l->base) : tt_error_status(l->ctx);
}

/* ---- 1. ask: three digits, and their sums without the tens; one question in eight is held out ---- */
static question ask(const learner *l, tt_rng *rng, int held_out) {
    question q = {{QUESTION, 0, 0, 0, ANSWER, 0, l->word[WAIT]}};
    int number, sum = 0;
    do { number = tt_rng_below(rng, 1000); } while ((number % 8 == 7) != held_out);
    for (int i = 0; i < DIGITS; i++, number /= 10) {
        sum = (sum + number) % 10;
        q.tokens[1 + i] = l->word[number % 10];
        q.tokens[ASKED + 2 + i] = l->word[sum];
    }
    return q;
}

/* The base reads NOTES - 1 guesses to each note, and learns what follows the question. */
static tt_status read_documents(learner *l, tt_rng *rng) {
    int32_t tokens[DOCUMENTS * (ASKED + LENGTH)], offsets[DOCUMENTS + 1] = {0};
    unsigned char mask[DOCUMENTS * (ASKED + LENGTH)] = {0};
    tt_batch_desc batch = {.n_sequences = DOCUMENTS, .offsets = offsets, .tokens = tokens, .mask = mask};
    for (int i = 0; i < DOCUMENTS; i++) {
        question q = ask(l, rng, 0);
        int32_t *at = tokens + offsets[i], end = i % NOTES == 0 ? RIGHT + 1 : ASKED + 1;
        memcpy(at, q.tokens, sizeof q.tokens);
        at[ASKED - 1] = i % NOTES == 0 ? NOTE : ANSWER;
        at[ASKED] = l->word[tt_rng_below(rng, 10)];
        at[end] = END;
        memset(mask + offsets[i] + ASKED, 1, (size_t)(end + 1 - ASKED));
        offsets[i + 1] = offsets[i] + end + 1;
    }
    tt_tensor *logprobs = tt_model_logprobs(l->model, tt_batch_create(l->ctx, &batch), 1, NULL);
    CHECK(tt_backward(l->ctx, tt_neg(l->ctx, tt_mean(l->ctx, logprobs))));
    tt_step_reset(l->ctx);
    return tt_optimizer_step(l->optimizer, 3e-3f, NULL);
}

/* ---- 2. attempts: n new questions, each so many times, sampled at temperature 1 ---- */
static tt_status attempt(learner *l, int held_out, int n, int n_tries, uint64_t stream) {
    int32_t end = END;
    tt_sampling sampling = {.max_new_tokens = LENGTH, .stop_tokens = &end, .n_stop_tokens = 1};
    tt_completions said = {0};
    tt_request requests[TEST];
    tt_rng rng = {l->seed, stream, 0};
    for (int i = 0; i < n; i++) {
        l->questions[i] = ask(l, &rng, held_out);
        requests[i] = (tt_request){l->questions[i].tokens, ASKED, n_tries, stream * TEST + (uint64_t)i};
    }
    tt_rollouts_free(&l->tries);
    tt_status status = tt_generate(l->model, requests, n, &sampling, &said);
    if (status == TT_OK) { status = tt_rollouts_create(l->ctx, requests, n, &said, END, &l->tries); }
    tt_completions_free(&said);
    return status;
}

/* ---- 3. feedback: the teacher goes on in the student's own voice. This one is a rule, and does not look at
 *         the try; the teacher of thinktune.c is the base itself, under another prompt ---- */
static tt_status teach(void *user, const tt_attempt *attempts, int n, tt_feedback *feedback) {
    int a, b, c;
    (void)user;
    for (int i = 0; i < n; i++) {
        if (sscanf(attempts[i].question, " %d %d %d", &a, &b, &c) != DIGITS) { return TT_ERR_ARG; }
        CHECK(tt_text_format(&feedback[i].reason, " wait %d %d %d", a, (a + b) % 10, (a + b + c) % 10));
    }
    return TT_OK;
}

/* ---- 5. reward: a little for stopping, all for ending in the right digit, whoever wrote it ---- */
static float reward(const learner *l, const tt_rollout *r) {
    int32_t last = r->tokens[r->prompt_length + r->response_length - 2];
    return !r->stopped ? 0 : last == l->questions[r->group].tokens[RIGHT] ? 1 : 0.1f;
}

/* The first guided response, and what the loss makes of each of its tokens. */
static tt_status show_guided(learner *l, tt_tensor *logprobs) {
    float values[PROMPTS * GROUP * LENGTH], *logp = values;
    const tt_rollout *r = l->tries.items;
    CHECK(tt_tensor_get(logprobs, values));
    while (!r->guided) { logp += r++->response_length; }
    l->words.size = 0;
    CHECK(tt_decode(l->tokenizer, r->tokens, ASKED, 0, &l->words));
    printf("  a try that the teacher continues; its loss: %s\n",
           tt_grpo_choice("aas", (int)l->grpo.aas)->formula);
    printf("  token   written by         p  mask      A  gamma(A)  weight   loss\n");
    printf("  %s               -     0\n", l->words.data);
    for (int t = 0; t < r->response_length; t++) {
        tt_token_kind kind = (tt_token_kind)r->kind[ASKED + t];
        double lp = (double)logp[t], p = exp(lp), a = (double)r->advantage;
        tt_token_loss x = tt_grpo_token_loss(&l->grpo, lp, lp, (double)NAN, a, kind);
        l->words.size = 0;
        CHECK(tt_decode(l->tokenizer, r->tokens + ASKED + t, 1, 0, &l->words));
        printf("  %-7s %-8s  %10.6f     1  %+5.2f  %8.0e  %6.3f  %+5.2f\n", l->words.data,
               kind == TT_KIND_TEACHER ? "teacher" : "student", p, a, p / x.factor - p, x.factor, x.loss);
    }
    return TT_OK;
}

/* ---- 4. augment: some tries are replaced by themselves with feedback behind them; 6. advantage = (reward -
 *         mean of its group) / deviation; 7. shaped loss and its gradient; 8. update ---- */
static tt_status train_step(learner *l, int step) {
    tt_grpo_metrics m = {0};
    tt_think_metrics t = {0};
    tt_loss_batch batch = {.rollouts = &l->tries};
    tt_tensor *entropy;
    CHECK(attempt(l, 0, PROMPTS, GROUP, (uint64_t)step));
    l->augment.step = step;
    if (l->augment.teacher && tt_think_active(&l->think, step)) {
        CHECK(tt_think_augment(&l->tries, &l->augment, &l->think, &t));
    }
    for (int i = 0; i < l->tries.n; i++) { l->tries.items[i].rewards[0] = reward(l, &l->tries.items[i]); }
    CHECK(tt_grpo_advantages(&l->tries, &l->grpo, NULL, &m));
    tt_tensor *logp = tt_model_logprobs(l->model, tt_rollouts_batch(l->ctx, &l->tries, NULL, 0), 1, &entropy);
    CHECK(tt_backward(l->ctx, tt_grpo_loss(l->ctx, logp, entropy, &batch, &l->grpo, &m)));
    if (step == 0 && t.n_guided > 0) { CHECK(show_guided(l, logp)); }
    if (step % 8 == 0) { printf("  step %2d  reward %.2f  continued %d\n", step, m.reward, t.n_guided); }
    tt_step_reset(l->ctx);
    return tt_optimizer_step(l->optimizer, 8e-4f * (1 - (float)step / (float)l->think.total_steps), NULL);
}

/* ---- 9. the student alone, on questions it has never seen ---- */
static tt_status examine(learner *l, const char *name) {
    const tt_rollout *r;
    tt_tally tally = {0};
    CHECK(attempt(l, 1, TEST, 1, 1 << 20));
    for (r = l->tries.items; r < l->tries.items + TEST; r++) {
        const int32_t *said = r->tokens + ASKED;
        int right = reward(l, r) == 1, guess = said[0] != l->word[WAIT] && said[0] != END;
        tt_outcome outcome = {right, guess, said[0] == l->questions[r->group].tokens[RIGHT], 0, 0};
        for (int k = 1; k < r->response_length; k++) { outcome.reflects |= said[k] == l->word[WAIT]; }
        tt_tally_add(&tally, &outcome, r->response_length, r->stopped);
    }
    tt_rates x = tt_tally_rates(&tally);
    CHECK(tt_text_format(&l->verdict, "%s: of 100 new questions %.0f right; it begins with a guess in %.0f, "
                         "checks it in %.0f, mends %.0f of 100 wrong ones: ", name, 100 * x.accuracy,
                         100 * x.attempt_rate, 100 * x.reflection_rate, 100 * x.correction_rate));
    r = l->tries.items;
    CHECK(tt_decode(l->tokenizer, r->tokens, (size_t)(ASKED + r->response_length), 0, &l->verdict));
    return tt_text_append(&l->verdict, "\n", 1);
}

static tt_status run(learner *l, int read) {
    static const tt_teacher teacher = {teach, NULL};
    tt_rng rng = {l->seed, 1 << 21, 0};
    CHECK(make_tokenizer(l));
    CHECK(make_model(l));
    for (int i = 0; i < read; i++) { CHECK(read_documents(l, &rng)); }
    CHECK(examine(l, "Base"));
    l->base = l->model;
    l->model = NULL;
    for (int k = 0; k < 2; k++) {
        l->augment.teacher = k ? &teacher : NULL;
        CHECK(make_model(l));
        for (int i = 0; i < l->think.total_steps; i++) { CHECK(train_step(l, i)); }
        CHECK(examine(l, k ? "ThinkTuning" : "GRPO"));
    }
    printf("%s", l->verdict.data);
    return TT_OK;
}

int main(int argc, char **argv) {
    learner l = {.grpo = {.num_generations = GROUP, .max_completion_length = LENGTH},
                 .think = {.init_pct = 0.3f, .separator = ""},
                 .augment = {.max_completion_length = LENGTH, .end_token = END},
                 .seed = argc > 1 ? strtoul(argv[1], NULL, 10) : 1};
    l.think.total_steps = argc > 3 ? atoi(argv[3]) : STEPS;
    l.ctx = l.words.ctx = l.verdict.ctx = tt_create(NULL);
    tt_status status = run(&l, argc > 2 ? atoi(argv[2]) : READ);
    if (status != TT_OK) { fprintf(stderr, "think: %s\n", tt_error(l.ctx)); }
    tt_text_free(&l.words);
    tt_text_free(&l.verdict);
    tt_rollouts_free(&l.tries);
    tt_optimizer_destroy(l.optimizer);
    tt_model_destroy(l.model);
    tt_model_destroy(l.base);
    tt_tokenizer_destroy(l.tokenizer);
    tt_destroy(l.ctx);
    return status == TT_OK ? 0 : 1;
}
