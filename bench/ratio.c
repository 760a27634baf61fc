/* ratio.c - what the sampler recorded beside what the trainer computes for the same weights, token by token.
 *
 *     build/ratio DIR PROMPTS TEMPERATURE END        TT_MATMUL=bf16 before it: products in bf16
 *
 * DIR: a model in the format of Hugging Face. PROMPTS: a file of token ids, a prompt a line. END: the token
 * that ends a response. Four prompts are one step of GRPO: eight responses to each of at most 64 tokens,
 * sampled all at once and worth their length modulo 3, then one update from graphs of one prompt's
 * responses. The log-probs in these graphs, of which the loss is made, are compared with those recorded
 * while the tokens were sampled, float by float.
 *
 *     RATIO kernel=avx512 tokens=5500 differ=0 mean=0 max=0 low=1 high=1 outside=0 moved=1
 *
 * differ: share of the tokens whose two log-probs are not the same float. mean, max: of |difference|. low,
 * high: of the raw ratio p_trainer / p_sampler; outside: its share beyond [0.9, 1.1]. moved: the share that
 * differs as soon as the update has moved the weights, so that 0 before it is no blindness of the
 * comparison. */
#include "../thinktuning.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PROMPTS = 4, GROUP = 8, LENGTH = 64, MAX_PROMPTS = 64 };

typedef struct learner {
    tt_context *ctx;
    tt_model *model;
    tt_optimizer *optimizer;
    tt_grpo_config grpo;
    int32_t end;
} learner;

typedef struct tally {
    int tokens, differ, outside, moved;
    double sum, max, low, high;
} tally;

static void check(tt_context *ctx, int good) {
    if (good) { return; }
    fprintf(stderr, "ratio: %s\n", tt_error(ctx));
    exit(1);
}

/* requests[i].prompt points into ids. Returns how many prompts the file has. */
static int read_prompts(const char *path, tt_ids *ids, tt_request *requests) {
    FILE *file = fopen(path, "r");
    char line[8192], *at, *end;
    size_t ends[MAX_PROMPTS + 1] = {0};
    int n = 0, i;
    while (file && n < MAX_PROMPTS && fgets(line, sizeof line, file)) {
        for (at = line;; at = end) {
            int32_t id = (int32_t)strtol(at, &end, 10);
            if (end == at) { break; }
            check(ids->ctx, tt_ids_append(ids, &id, 1) == TT_OK);
        }
        ends[++n] = ids->size;
    }
    if (file) { fclose(file); }
    for (i = 0; i < n; i++) {
        requests[i].prompt = ids->data + ends[i];
        requests[i].prompt_length = (int)(ends[i + 1] - ends[i]);
        requests[i].n = GROUP;
        requests[i].id = (uint64_t)i;
    }
    return n;
}

static void sample(const learner *l, const tt_request *requests, tt_rollouts *out) {
    tt_sampling sampling = TT_INIT;
    tt_completions tries = TT_INIT;
    int i;
    sampling.max_new_tokens = LENGTH;
    sampling.temperature = l->grpo.temperature;
    sampling.stop_tokens = &l->end;
    sampling.n_stop_tokens = 1;
    check(l->ctx, tt_generate(l->model, requests, PROMPTS, &sampling, &tries) == TT_OK);
    check(l->ctx, tt_rollouts_create(l->ctx, requests, PROMPTS, &tries, l->end, out) == TT_OK);
    tt_completions_free(&tries);
    for (i = 0; i < out->n; i++) { out->items[i].rewards[0] = (float)(out->items[i].response_length % 3); }
    check(l->ctx, tt_grpo_advantages(out, &l->grpo, NULL, NULL) == TT_OK);
}

static void compare(tally *t, const tt_rollout *r, const float *trained) {
    int i;
    for (i = 0; i < r->response_length; i++) {
        double gap = (double)trained[i] - (double)r->sampling_logprobs[i], ratio = exp(gap);
        t->differ += trained[i] != r->sampling_logprobs[i];
        t->outside += ratio < 0.9 || ratio > 1.1;
        t->sum += fabs(gap);
        t->max = fmax(t->max, fabs(gap));
        t->low = fmin(t->low, ratio);
        t->high = fmax(t->high, ratio);
    }
    t->tokens += r->response_length;
}

/* One update; what stands in its graphs is compared as they are made. */
static void learn(const learner *l, const tt_rollouts *rollouts, tally *t) {
    const tt_loss_totals totals = tt_grpo_totals(rollouts, &l->grpo);
    tt_loss_batch batch = TT_INIT;
    int indices[GROUP], group, i;
    batch.rollouts = rollouts;
    batch.indices = indices;
    batch.n = GROUP;
    batch.totals = &totals;
    for (group = 0; group < PROMPTS; group++) {
        tt_tensor *logprobs, *entropy, *loss;
        const float *trained;
        for (i = 0; i < GROUP; i++) { indices[i] = group * GROUP + i; }
        logprobs = tt_model_logprobs(l->model, tt_rollouts_batch(l->ctx, rollouts, indices, GROUP),
                                     l->grpo.temperature, &entropy);
        loss = tt_grpo_loss(l->ctx, logprobs, entropy, &batch, &l->grpo, NULL);
        check(l->ctx, tt_backward(l->ctx, loss) == TT_OK);
        trained = TT_F(logprobs);
        for (i = 0; i < GROUP; i++) {
            compare(t, &rollouts->items[indices[i]], trained);
            trained += rollouts->items[indices[i]].response_length;
        }
        tt_step_reset(l->ctx);
    }
    check(l->ctx, tt_optimizer_step(l->optimizer, 1e-6f, NULL) == TT_OK);
}

/* How many of the rollouts' log-probs differ from those of the model as it is now. */
static int count_moved(const learner *l, const tt_rollouts *rollouts, int n_tokens) {
    tt_scoring scoring = TT_INIT;
    float *now = (float *)tt_alloc(l->ctx, (size_t)n_tokens, sizeof *now);
    tally t = TT_INIT;
    int i, at = 0;
    scoring.model = l->model;
    scoring.temperature = l->grpo.temperature;
    check(l->ctx, now && tt_rollouts_logprobs(rollouts, &scoring, now, NULL) == TT_OK);
    for (i = 0; i < rollouts->n; i++) {
        compare(&t, &rollouts->items[i], now + at);
        at += rollouts->items[i].response_length;
    }
    tt_free(l->ctx, now, (size_t)n_tokens, sizeof *now);
    return t.differ;
}

int main(int argc, char **argv) {
    learner l = TT_INIT;
    tt_request requests[MAX_PROMPTS] = TT_INIT;
    tt_ids ids = TT_INIT;
    tally t = TT_INIT;
    int n, i;
    if (argc != 5) {
        fprintf(stderr, "usage: %s DIR PROMPTS TEMPERATURE END\n", argv[0]);
        return 2;
    }
    ids.ctx = l.ctx = tt_create(NULL);
    check(l.ctx, l.ctx && tt_error_status(l.ctx) == TT_OK);
    n = read_prompts(argv[2], &ids, requests);
    if (n < PROMPTS) {
        fprintf(stderr, "ratio: %s has %d prompts, expected %d or more\n", argv[2], n, (int)PROMPTS);
        return 1;
    }
    l.end = (int32_t)atoi(argv[4]);
    l.grpo.num_generations = GROUP;
    l.grpo.max_completion_length = LENGTH;
    l.grpo.temperature = (float)atof(argv[3]);
    l.model = tt_model_load(l.ctx, argv[1]);
    check(l.ctx, l.model != NULL);
    l.optimizer = tt_adamw_create(l.model, NULL);
    check(l.ctx, l.optimizer != NULL);
    t.low = HUGE_VAL;
    for (i = 0; i + PROMPTS <= n; i += PROMPTS) {
        tt_rollouts rollouts = TT_INIT;
        int before = t.tokens;
        sample(&l, requests + i, &rollouts);
        learn(&l, &rollouts, &t);
        t.moved += count_moved(&l, &rollouts, t.tokens - before);
        tt_rollouts_free(&rollouts);
    }
    printf("RATIO kernel=%s tokens=%d differ=%.4g mean=%.3g max=%.3g ", tt_kernel(l.ctx), t.tokens,
           (double)t.differ / t.tokens, t.sum / t.tokens, t.max);
    printf("low=%.7g high=%.7g outside=%.4g moved=%.4g\n", t.low, t.high, (double)t.outside / t.tokens,
           (double)t.moved / t.tokens);
    tt_optimizer_destroy(l.optimizer);
    tt_model_destroy(l.model);
    tt_ids_free(&ids);
    tt_destroy(l.ctx);
    return 0;
}
