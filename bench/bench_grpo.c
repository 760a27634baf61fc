/* Where the time of a GRPO step goes: 16 prompts x 8 responses of at most 64 tokens of the task "signs", a random model whose
 * responses are worth their length modulo 3: were all wrong, the advantages would be 0 and the backward pass would fall away.
 *   build/bench_grpo [THREADS [PART]]
 * grpo_step_MODEL: seconds of a whole step. grpo_rollout_, grpo_update_, tokens per second: sampled; of forward, backward
 * and AdamW. grpo_old_logprobs_: one forward pass over the same rollouts, which a step has if it updates more than once.
 * think_step_, think_teacher_: the same with a teacher of the same size, which answers a quarter of the responses with at most
 * 64 tokens. PARTS: shares of the time of the steps. MODEL tiny: the demo's. */
#include "bench.h"
#include "../examples/tasks.h"

enum { PROMPTS = 16, GENERATIONS = 8, LENGTH = 64, CHUNK = 16 };
typedef struct grpo {
    tt_context *ctx;
    tt_signs *signs;
    tt_task task;
    tt_tokenizer *tokenizer;
    tt_model *student, *frozen;
    tt_model_teacher *mentor;
    tt_trainer *trainer;
} grpo;

static tt_status length_reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = (float)(strlen(in->response) % 3);
    return TT_OK;
}
static void grpo_begin(grpo *g, const bench_model *shape, int n_threads, int has_teacher) {
    tt_trainer_desc d = TT_INIT;
    tt_model_config config = bench_config(shape);
    tt_teacher_prompt prompt = TT_INIT;
    tt_teacher teacher = TT_INIT;
    memset(g, 0, sizeof *g);
    g->ctx = bench_context(n_threads);
    g->signs = tt_signs_create(g->ctx, NULL);
    bench_check(g->ctx, g->signs != NULL);
    g->task = tt_task_signs(g->signs);
    g->task.reward = length_reward;
    g->tokenizer = tt_signs_tokenizer(g->signs);
    bench_check(g->ctx, g->tokenizer != NULL);
    config.vocab_size = tt_vocab_size(g->tokenizer);
    config.eos_token_id = tt_token_id(g->tokenizer, g->task.end_token);
    g->student = tt_model_create(g->ctx, &config, 1);
    bench_check(g->ctx, g->student != NULL);
    if (has_teacher) {
        prompt.prompt_template = TT_SIGNS_TEACHER_TEMPLATE;
        prompt.stop_token = TT_SIGNS_TEACHER_STOP;
        prompt.max_new_tokens = LENGTH;
        g->frozen = tt_model_copy(g->student);
        bench_check(g->ctx, g->frozen != NULL);
        g->mentor = tt_model_teacher_create(g->frozen, g->tokenizer, &prompt);
        bench_check(g->ctx, g->mentor != NULL);
        teacher = tt_teacher_model(g->mentor);
        d.teacher = &teacher;
    }
    d.model = g->student;
    d.tokenizer = g->tokenizer;
    d.task = &g->task;
    d.prompts_per_step = PROMPTS;
    d.grpo.num_generations = GENERATIONS;
    d.grpo.max_completion_length = LENGTH;
    d.think.init_pct = 0.25f;
    d.think.total_steps = 1000;
    d.think.schedule = TT_THINK_CONSTANT;
    d.schedule.lr = 1e-6f;
    g->trainer = tt_trainer_create(g->ctx, &d);
    bench_check(g->ctx, g->trainer != NULL);
}
static void grpo_end(grpo *g) {
    tt_trainer_destroy(g->trainer);
    tt_model_teacher_destroy(g->mentor);
    tt_model_destroy(g->frozen);
    tt_model_destroy(g->student);
    tt_tokenizer_destroy(g->tokenizer);
    tt_signs_destroy(g->signs);
    tt_destroy(g->ctx);
}
/* Seconds of a forward pass over the responses of the last step; *tokens: all that it read. */
static double old_logprobs_seconds(grpo *g, double *tokens) {
    const tt_rollouts *all = tt_trainer_rollouts(g->trainer);
    int indices[CHUNK], i, n;
    double begin = tt_clock();
    *tokens = 0;
    tt_no_grad_begin(g->ctx);
    for (i = 0; i < all->n; i += n) {
        for (n = 0; n < CHUNK && i + n < all->n; n++) {
            indices[n] = i + n;
            *tokens += all->items[i + n].prompt_length + all->items[i + n].response_length;
        }
        bench_check(g->ctx, tt_model_logprobs(g->student, tt_rollouts_batch(g->ctx, all, indices, n), 1, NULL) != NULL);
        tt_step_reset(g->ctx);
    }
    tt_no_grad_end(g->ctx);
    bench_sync(g->ctx);
    return tt_clock() - begin;
}
/* work: operations of a token, or of a step where the unit is s. */
static void print(const char *kind, const char *model_name, const char *unit, int threads, double *values, int n, double work) {
    bench_figure f = TT_INIT;
    char name[64];
    snprintf(name, sizeof name, "%s_%s", kind, model_name);
    f.name = name;
    f.unit = unit;
    f.threads = threads;
    f.ours = bench_stat_of(values, n);
    f.peak = BENCH_FMA;
    f.peak_rate = 1e-9 * work * (strcmp(unit, "s") == 0 ? 1 / f.ours.median : f.ours.median);
    if (f.ours.median > 0) { bench_print(&f); }
}
static void bench(const char *shape_name, const char *model_name, int n_threads, int has_teacher) {
    grpo g;
    tt_step_metrics m;
    double step[BENCH_MAX_RUNS], rollout[BENCH_MAX_RUNS], teacher[BENCH_MAX_RUNS], update[BENCH_MAX_RUNS], old[BENCH_MAX_RUNS];
    double total = 0, in_rollout = 0, in_teacher = 0, in_update = 0, work = 0, tokens, matrix_work;
    char name[64];
    int n;
    snprintf(name, sizeof name, "%s_step_%s", has_teacher ? "think" : "grpo", model_name);
    if (!bench_wants(name)) { return; }
    grpo_begin(&g, bench_model_find(shape_name), n_threads, has_teacher);
    matrix_work = 2 * bench_matrix_weights(g.student);
    for (n = 0; n < 2; n++) { bench_check(g.ctx, tt_trainer_step(g.trainer, &m) == TT_OK); }      /* the second is the first on the step's whole memory */
    for (n = 0; bench_again(n, total); n++) {
        bench_check(g.ctx, tt_trainer_step(g.trainer, &m) == TT_OK);
        total += step[n] = m.step_s;
        in_rollout += m.rollout_s;
        in_teacher += m.teacher_s;
        in_update += m.update_s;
        work += matrix_work * (m.rollout_tokens + m.think.teacher_tokens + 3 * m.update_tokens);
        rollout[n] = m.rollout_tokens_per_s;
        teacher[n] = m.teacher_tokens_per_s;
        update[n] = m.update_tokens_per_s;
        old[n] = old_logprobs_seconds(&g, &tokens);
        old[n] = tokens / old[n];
    }
    if (has_teacher) {
        print("think_step", model_name, "s", n_threads, step, n, work / n);
        print("think_teacher", model_name, "tokens/s", n_threads, teacher, n, matrix_work);
    } else {
        print("grpo_step", model_name, "s", n_threads, step, n, work / n);
        print("grpo_rollout", model_name, "tokens/s", n_threads, rollout, n, matrix_work);
        print("grpo_old_logprobs", model_name, "tokens/s", n_threads, old, n, matrix_work);
        print("grpo_update", model_name, "tokens/s", n_threads, update, n, 3 * matrix_work);
    }
    /* shares of the step; and in seconds what it cannot do without: its products at the measured peak, the weights read once for each
     * token of a response */
    printf("PARTS name=%s threads=%d rollout=%.2f teacher=%.2f update=%.2f least_arithmetic=%.4f least_reading=%.4f\n", name, n_threads, in_rollout / total,
           in_teacher / total, in_update / total, 1e-9 * work / n / bench_roof(n_threads, BENCH_FMA), 2e-9 * matrix_work * LENGTH / bench_roof(n_threads, BENCH_READ));
    grpo_end(&g);
}
static void run(int n_threads) {
    int has_teacher;
    for (has_teacher = 0; has_teacher < 2; has_teacher++) {
        bench("demo", "tiny", n_threads, has_teacher);
        bench("10m", "10m", n_threads, has_teacher);
    }
}
int main(int argc, char **argv) { return bench_main(argc, argv, run); }
