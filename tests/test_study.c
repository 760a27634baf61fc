/* examples/study.c: its statistics against numbers worked by hand, its tools, and that an interrupted study is the whole one. */
#define main study_main
#include "../examples/study.c"
#undef main
#include "tt_test.h"
#ifndef _WIN32
#include <sys/time.h>
#include <sys/wait.h>
#endif

static void same_file(const char *x, const char *y, const char *name) {
    char a[300], b[300];
    tt_context *ctx = tt_create(NULL);
    tt_text left = TT_INIT, right = TT_INIT;
    left.ctx = right.ctx = ctx;
    snprintf(a, sizeof a, "%s/%s", x, name);
    snprintf(b, sizeof b, "%s/%s", y, name);
    TT_CHECK_OK(ctx, tt_file_read(ctx, a, &left));
    TT_CHECK_OK(ctx, tt_file_read(ctx, b, &right));
    TT_CHECK(left.size > 100 && left.size == right.size && memcmp(left.data, right.data, left.size) == 0);
    tt_text_free(&left);
    tt_text_free(&right);
    tt_destroy(ctx);
}

/* ---- statistics ---- */
static sample sample_with(int n, const double *values) {
    sample s;
    s.n = n;
    memcpy(s.values, values, (size_t)n * sizeof *values);
    return s;
}
TT_TEST(intervals_and_p_are_those_worked_by_hand) {
    static const double line[5] = {1, 2, 3, 4, 5}, same[5] = {1, 1, 1, 1, 1}, mixed[3] = {1, 2, -0.5}, even[2] = {1, -1};
    sample s = sample_with(5, line);
    TT_CHECK_NEAR(mean_of(&s), 3, 1e-12);
    TT_CHECK_NEAR(half_interval(&s), 2.776 * sqrt(2.5 / 5), 1e-9);
    s = sample_with(5, same);
    TT_CHECK_NEAR(half_interval(&s), 0, 1e-12);
    TT_CHECK_NEAR(sign_flip_p(&s), 2.0 / 32, 1e-12);
    s = sample_with(3, mixed);                 /* of +-1 +-2 +-0.5 the sums 3.5 and 2.5 are as far as 2.5, and their negatives */
    TT_CHECK_NEAR(sign_flip_p(&s), 4.0 / 8, 1e-12);
    s = sample_with(2, even);
    TT_CHECK_NEAR(sign_flip_p(&s), 1, 1e-12);
    TT_CHECK_NEAR(t_quantile(1), 12.706, 1e-9);
    TT_CHECK_NEAR(t_quantile(30), 2.042, 1e-9);
    TT_CHECK_NEAR(t_quantile(60), 2.000, 2e-3);
}
static void put_result(tt_context *ctx, results *r, const char *name, int seed, const char *json) {
    r->of[place_of_arm(name)][seed] = tt_json_parse(ctx, json, strlen(json));
    TT_CHECK(r->of[place_of_arm(name)][seed] != NULL);
}
/* A study of so many seeds without a result yet. */
static void begin_results(app *a, results *r, int seeds) {
    memset(a, 0, sizeof *a);
    memset(r, 0, sizeof *r);
    a->ctx = tt_create(NULL);
    given = default_options();
    given.seeds = seeds;
}
TT_TEST(survival_counts_those_still_watched) {
    static results r;
    app a;
    lifetime l;
    begin_results(&a, &r, 4);
    put_result(a.ctx, &r, "thinktune", 0, "{\"first_10\":30,\"rollouts\":99}");
    put_result(a.ctx, &r, "thinktune", 1, "{\"first_10\":-1,\"rollouts\":20}");      /* watched until 20, never started */
    put_result(a.ctx, &r, "thinktune", 2, "{\"first_10\":10,\"rollouts\":99}");
    l = lifetime_of(&r, place_of_arm("thinktune"), "first_10");                       /* seed 3 was not run */
    TT_CHECK_INT(l.n, 3);
    TT_CHECK_INT(l.started, 2);
    TT_CHECK_NEAR(survival(&l, 9), 1, 1e-12);
    TT_CHECK_NEAR(survival(&l, 10), 2.0 / 3, 1e-12);
    TT_CHECK_NEAR(survival(&l, 25), 2.0 / 3, 1e-12);
    TT_CHECK_NEAR(survival(&l, 30), 0, 1e-12);
    TT_CHECK_NEAR(median_start(&l), 30, 1e-12);
    free_results(&a, &r);
    tt_destroy(a.ctx);
}
TT_TEST(pictures_have_room_for_every_run) {
    static results r;
    app a;
    picked which;
    plot x;
    begin_results(&a, &r, 2);
    put_result(a.ctx, &r, "thinktune", 0, "{\"first_10\":30,\"rollouts\":2000}");
    which = in_budget(&r);
    x = budget_plot(&r, &which, "");
    TT_CHECK_NEAR(x.x_low, 128, 0);
    TT_CHECK_NEAR(x.x_high, 2048, 0);
    put_result(a.ctx, &r, "grpo_tokens", 1, "{\"first_10\":-1,\"rollouts\":283904}");
    which = in_budget(&r);
    x = budget_plot(&r, &which, "");
    TT_CHECK_NEAR(x.x_high, 128 * 4096, 0);
    TT_CHECK_NEAR((plot_x(&x, 1024) - PLOT_X) / PLOT_WIDTH, 0.25, 1e-12);
    free_results(&a, &r);
    tt_destroy(a.ctx);
}

TT_TEST(ticks_are_round_numbers) {
    static const double spans[][2] = {{49, 10}, {1, 0.2}, {0.46, 0.1}, {70, 20}, {7, 2}, {250, 50}};
    size_t i;
    for (i = 0; i < sizeof spans / sizeof *spans; i++) {
        TT_CHECK_NEAR(round_step(spans[i][0], 6), spans[i][1], 1e-12);
    }
}

static void check_marks(const char *text, const char *expected) {
    tt_context *ctx = tt_create(NULL);
    tt_text t = TT_INIT;
    t.ctx = ctx;
    TT_CHECK_OK(ctx, html_marked(&t, text));
    TT_CHECK_STR(t.data, expected);
    tt_text_free(&t);
    tt_destroy(ctx);
}

TT_TEST(a_page_marks_checks_verdicts_and_answers) {
    check_marks("+2 =2 -7 =-5 need 5 . no", "+2 <b class=\"ok\">=2</b> -7 <b class=\"ok\">=-5</b> need 5 . "
                "<b class=\"ok\">no</b>");
    check_marks(": +4 =4 +3 =8 need 8 . no ,", ": +4 <b class=\"ok\">=4</b> +3 <b class=\"bad\">=8</b> need 8 . "
                "<b class=\"bad\">no</b> ,");
    check_marks("2 + 3 * 4 = 14, 10 / 3 = 3.33.", "2 + 3 * 4 <b class=\"ok\">= 14</b>, 10 / 3 "
                "<b class=\"ok\">= 3.33</b>.");
    check_marks("3 x 1,000 = 300 apples", "3 x 1,000 <b class=\"bad\">= 300</b> apples");
    check_marks("Wait, wait: x = 4 < 5\n#### 5", "<b class=\"turn\">Wait</b>, wait: x = 4 &lt; 5\n"
                "<b class=\"answer\">#### 5</b>");
    check_marks("so answer -2 +7\n\\boxed{4}", "so <b class=\"answer\">answer -2 +7</b>\n"
                "<b class=\"answer\">\\boxed{4</b>}");
    check_marks("7 * 6 =42 said answer 41 . no .", "7 * 6 <b class=\"ok\">=42</b> said answer 41 . "
                "<b class=\"ok\">no</b> .");
    check_marks("(2 + 3) * 4 = 20, = , =", "(2 + 3) * 4 = 20, = , =");
    check_marks("5 = 3 + 2. 2 + 2 and x = 3", "5 = 3 + 2. 2 + 2 and x = 3");
}
TT_TEST(other_settings_are_named) {
    tt_context *ctx = tt_create(NULL);
    TT_CHECK_OK(ctx, same_settings(ctx, "runs/x", "--steps 50\n--lr 0.1\n", "--steps 50\n--lr 0.1\n"));
    TT_CHECK_INT(same_settings(ctx, "runs/x", "--steps 50\n--lr 0.1\narithmetic avx512\n", "--steps 50\n--lr 0.1\narithmetic avx512+dot-bf16\n"), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "runs/x began with \"arithmetic avx512\", this one has \"arithmetic avx512+dot-bf16\"");
    tt_error_clear(ctx);
    TT_CHECK_INT(same_settings(ctx, "runs/x", "--steps 50\n--lr 0.1\n", "--steps 500\n--lr 0.1\n"), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "began with \"--steps 50\", this one has \"--steps 500\"");
    tt_error_clear(ctx);
    TT_CHECK_INT(same_settings(ctx, "runs/x", "--steps 50\n", "--steps 50\n--lr 0.1\n"), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "another version");
    tt_destroy(ctx);
}
/* ---- what is said while it runs ---- */
TT_TEST(a_line_leaves_out_the_figures_that_do_not_fit) {
    char line[200];
    static const char figures[] = "own reward 0.188  reflection 0.123  12345 tokens/s";
    fit_line(line, sizeof line, "seed 1  grpo 1/50", figures, "1:35 left", 80);
    TT_CHECK_STR(line, "seed 1  grpo 1/50  own reward 0.188  reflection 0.123  12345 tokens/s  1:35 left");
    fit_line(line, sizeof line, "seed 1  grpo 1/50", figures, "1:35 left", 79);
    TT_CHECK_STR(line, "seed 1  grpo 1/50  own reward 0.188  reflection 0.123  1:35 left");
    fit_line(line, sizeof line, "seed 1  grpo 1/50", figures, "1:35 left", 30);
    TT_CHECK_STR(line, "seed 1  grpo 1/50  1:35 left");
    fit_line(line, sizeof line, "sft", "", "0:00 left", 80);
    TT_CHECK_STR(line, "sft  0:00 left");
    TT_CHECK_STR(clock_text(3599.4), "59:59");
    TT_CHECK_STR(clock_text(7384), "2:03:04");
    TT_CHECK_STR(clock_text(-1), "0:00");
    TT_CHECK_STR(clock_text(HUGE_VAL), "0:00");
}
TT_TEST(a_clock_that_is_set_back_keeps_nobody_waiting) {
    double last = tt_clock();
    TT_CHECK(!is_due(&last, 100));
    last += 3600;
    TT_CHECK(is_due(&last, 100) && last <= tt_clock());
    last -= 101;
    TT_CHECK(is_due(&last, 100) && !is_due(&last, 100));
}
/* Work is what two quiet cores need: the first figure is the expected one, later ones follow the pace of this machine. */
TT_TEST(the_time_left_is_the_whole_runs_at_the_pace_of_this_machine) {
    app a;
    memset(&a, 0, sizeof a);
    a.whole = 100;
    a.whole_begin = tt_clock();
    TT_CHECK_NEAR(time_left(&a, 0), 100, 0.1);
    a.done = 40;
    a.part = 20;
    a.whole_begin = tt_clock() - 100;             /* half of it in 100 seconds: 105 for 55 */
    TT_CHECK_NEAR(time_left(&a, 0.5), 50 * 105.0 / 55, 0.1);
    a.whole_from = 40;                            /* of which 40 were found done */
    TT_CHECK_NEAR(time_left(&a, 0.5), 50 * 105.0 / 15, 0.1);
    a.whole_begin = tt_clock() + 1000;            /* set back */
    TT_CHECK(time_left(&a, 0.5) > 0);
}
TT_TEST(claims_count_seeds_and_pair_them) {
    static results r;
    app a;
    tt_text text = TT_INIT;
    page p = {NULL, 0, 0};
    int seed;
    begin_results(&a, &r, 5);
    text.ctx = a.ctx;
    p.text = &text;
    for (seed = 0; seed < 5; seed++) {
        static const char *const with = "{\"sampled\":{\"accuracy\":0.75,\"reflection_rate\":1,\"correction_rate\":0.6},\"greedy\":{\"accuracy\":0.5}}";
        static const char *const empty = "{\"sampled\":{\"accuracy\":0.25,\"reflection_rate\":1,\"correction_rate\":0.1},\"greedy\":{\"accuracy\":0.5}}";
        put_result(a.ctx, &r, "thinktune", seed, with);
        put_result(a.ctx, &r, "grpo", seed, seed == 4 ? with : empty);      /* a marker without its meaning does not count */
    }
    TT_CHECK_OK(a.ctx, claims(&p, &r));
    TT_CHECK_CONTAINS(text.data, "with the teacher alone in 4 of 5 seeds, in both 1, with reward alone 0; exact sign test, one-sided, p = 0.062");
    TT_CHECK_CONTAINS(text.data, "+0.400 ± 0.278 at T = 1 (paired over 5 seeds, p = 0.125), +0.000 ± 0.000 greedy (p = 1.000)");
    free_results(&a, &r);
    tt_text_free(&text);
    tt_destroy(a.ctx);
}
/* a = 0: of eight responses the guided one alone is right; mean 1/8, deviation sqrt(1/8), A = (7/8) / sqrt(1/8). */
TT_TEST(the_predicted_push_is_the_shapings) {
    double a = 0.875 / sqrt(0.125), p = 1e-6;
    given = default_options();
    TT_CHECK_NEAR(predicted_push(1, 0, p, TT_AAS_FORMULA), a * p / (p + 0.00025 * a), 1e-7);
    TT_CHECK_NEAR(predicted_push(1, 0, p, TT_AAS_RELEASED), a * 1.0001, 1e-5);
    TT_CHECK_NEAR(predicted_push(0, 0, p, TT_AAS_RELEASED), 0, 1e-12);                /* all wrong: nothing to learn */
    TT_CHECK(predicted_push(0, 0.3, p, TT_AAS_RELEASED) < -0.3);
    TT_CHECK(predicted_push(0.8, 0.2, 1e-7, TT_AAS_FORMULA) < 0 && predicted_push(0.8, 0.2, 1e-3, TT_AAS_FORMULA) > 0);
}

/* ---- arms ---- */
TT_TEST(ablations_change_one_factor) {
    static const char *const parts[] = {"shaping", "mask", "teacher", "quality", "schedule", "share"};
    int i, k;
    for (i = 0; i < N_ARMS; i++) {
        int place = -1, factors;
        for (k = 0; k < 6; k++) { if (strcmp(arms[i].part, parts[k]) == 0) { place = k; } }
        factors = (arms[i].aas != NULL) | (arms[i].mask != NULL) << 1 | (arms[i].teacher != FROZEN) << 2 | (arms[i].corrupt > 0) << 3 |
                  (arms[i].schedule || (arms[i].off_eps != 0 && !(arms[i].init_pct > 0))) << 4 | (arms[i].init_pct > 0) << 5;
        if (place >= 0) { TT_CHECK_INT(factors, 1 << place); }
        if (strcmp(arms[i].part, "main") == 0) { TT_CHECK_INT(factors, 0); }
        TT_CHECK(arm_named(arms[i].name) == &arms[i]);      /* names are unique */
        TT_CHECK(arms[i].work > 0);
    }
}

/* ---- bases of low coherence ---- */
/* Documents of steps [begin, end) of a pretraining of 100 steps, by who speaks. */
typedef struct speakers { int students, teachers, notes; } speakers;
static speakers count_speakers(app *a, int begin, int end) {
    speakers n = TT_INIT;
    pack p;
    int step;
    size_t i;
    p.tokens = new_ids(a);
    p.offsets = new_ids(a);
    p.mask = new_text(a);
    for (step = begin; step < end; step++) {
        TT_CHECK_OK(a->ctx, pack_step(a, &p, step));
        TT_CHECK(p.tokens.size >= (size_t)a->o.pretrain_tokens && p.mask.size == p.tokens.size);
        for (i = 0; i + 1 < p.offsets.size; i++) {
            int32_t first = p.tokens.data[p.offsets.data[i]];
            if (first == tt_token_id(a->tokenizer, "<user>")) { n.students++; } else if (first == tt_token_id(a->tokenizer, "<mentor>")) { n.teachers++; } else { n.notes++; }
        }
    }
    tt_ids_free(&p.tokens);
    tt_ids_free(&p.offsets);
    tt_text_free(&p.mask);
    return n;
}
TT_TEST(a_base_of_low_coherence_reads_notes_in_its_first_half_alone) {
    static const char *const names[2] = {"base", "base_incoherent"};
    speakers early[2], late[2];
    app a;
    int k;
    memset(&a, 0, sizeof a);
    a.ctx = tt_create(NULL);
    a.seed = 1;
    for (k = 0; k < 2; k++) {
        tt_signs_desc signs = TT_INIT;
        signs.seed = 1;
        given = default_options();
        a.o = arm_options(arm_named(names[k]));
        TT_CHECK_INT(a.o.pretrain_steps, k ? 7000 : 10000);
        a.o.pretrain_steps = 100;
        a.signs = tt_signs_create(a.ctx, &signs);
        a.tokenizer = tt_signs_tokenizer(a.signs);
        TT_REQUIRE(a.tokenizer != NULL);
        early[k] = count_speakers(&a, 0, 51);
        late[k] = count_speakers(&a, 51, 93);
        close_base(&a);
    }
    TT_CHECK(early[1].notes > 0 && late[1].notes == 0 && late[1].teachers > 0 && late[1].students > 0);
    TT_CHECK(memcmp(&early[0], &early[1], sizeof early[0]) == 0);
    TT_CHECK(late[0].notes > 0);
    tt_destroy(a.ctx);
}
/* A quick study in a folder of its own, with the options of an arm. */
static void start_quick(app *a, const char *folder, const char *arm, int seed) {
    memset(a, 0, sizeof *a);
    given = default_options();
    given.quick = 1;
    given.out = tt_test_tmp(folder);
    a->ctx = tt_create(NULL);
    a->seed = seed;
    a->whole = 1;
    a->o = arm_options(arm_named(arm));
    if (!tt_test_exhaustive()) { a->o.pretrain_steps = 20; }
}
/* With the same steps, so that the notes alone tell them apart. */
TT_TEST(bases_with_and_without_late_notes_are_not_taken_for_each_other) {
    app a;
    float *heads[2];
    size_t size = 0;
    int k;
    start_quick(&a, "study_notes", "base", 1);
    a.o.pretrain_steps = 20;
    for (k = 0; k < 2; k++) {
        tt_tensor *head;
        a.o.notes_until = 0.5 * k;
        TT_REQUIRE(open_base(&a) == TT_OK);
        head = tt_model_param_find(a.base, "lm_head.weight");
        size = head->size;
        heads[k] = (float *)malloc(size * sizeof **heads);
        TT_CHECK_OK(a.ctx, tt_tensor_get(head, heads[k]));
        close_base(&a);
    }
    TT_CHECK(memcmp(heads[0], heads[1], size * sizeof **heads) != 0);
    free(heads[0]);
    free(heads[1]);
    tt_destroy(a.ctx);
}

/* ---- corrupted feedback ---- */
static tt_status number_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    int i;
    (void)user;
    (void)attempts;
    for (i = 0; i < n; i++) { CHECK(tt_text_format(&out[i].reason, "%d", i)); }
    return TT_OK;
}
static int count_foreign(tt_context *ctx, double share) {
    enum { N = 400 };
    static tt_feedback out[N];
    static tt_attempt attempts[N];
    static char questions[N][16];
    corrupter c;
    int i, foreign = 0, sum = 0;
    memset(&c, 0, sizeof c);
    memset(out, 0, sizeof out);
    c.inner.feedback = number_feedback;
    c.share = share;
    for (i = 0; i < N; i++) {
        snprintf(questions[i], sizeof questions[i], "%d ?", i);
        attempts[i].question = attempts[i].response = questions[i];
        attempts[i].question_size = attempts[i].response_size = strlen(questions[i]);
        out[i].reason.ctx = ctx;
    }
    TT_CHECK_OK(ctx, corrupt_feedback(&c, attempts, N, out));
    for (i = 0; i < N; i++) {
        int said = atoi(out[i].reason.data);
        foreign += said != i;
        sum += said;
        tt_text_free(&out[i].reason);
    }
    TT_CHECK_INT(sum, N * (N - 1) / 2);      /* handed round, none lost */
    return foreign;
}
TT_TEST(corruption_hands_feedback_round) {
    tt_context *ctx = tt_create(NULL);
    TT_CHECK_INT(count_foreign(ctx, 0), 0);
    TT_CHECK_INT(count_foreign(ctx, 1), 400);
    TT_CHECK_NEAR(count_foreign(ctx, 0.25), 100, 30);
    tt_destroy(ctx);
}

/* ---- the best checkpoint ---- */
/* Trains a fresh student for so many steps, from a checkpoint if there is one, and saves it as it ends. */
static void train_plain(app *a, const char *name, int steps, int keep_best, int stop_at_once) {
    tt_model *student = new_student(a);
    tt_trainer_desc desc;
    char metrics[300];
    a->o.steps = steps;
    a->o.keep_best = keep_best;
    desc = arm_desc(a, student, "grpo", NULL);
    stop_requested = stop_at_once;
    TT_CHECK_OK(a->ctx, tt_make_dirs(a->ctx, path_of(a->o.out, "seed-1/%s/best", name)));
    snprintf(metrics, sizeof metrics, "%s", path_of(a->o.out, "seed-1/%s/metrics.jsonl", name));
    TT_CHECK_INT(train_student(a, name, &desc, metrics, 0), stop_at_once ? TT_ERR_STOP : TT_OK);
    TT_CHECK_OK(a->ctx, save_student(a, student, path_of(a->o.out, "seed-1/%s", name)));
    stop_requested = 0;
    tt_model_destroy(student);
}
TT_TEST(the_best_checkpoint_is_that_of_the_best_steps) {
    app a;
    tt_text text = TT_INIT;
    double rewards[6] = {0}, best = -1;
    size_t at = 0;
    int step, window = 0, k;
    char kept[300], other[300];
    if (!tt_test_exhaustive()) { TT_SKIP("a base that learns, with TT_EXHAUSTIVE=1"); }
    memset(&a, 0, sizeof a);
    given = default_options();
    given.quick = 1;
    given.pretrain_steps = 10000;                  /* a hundred steps when quick: it learns to end, and its length to vary */
    given.out = tt_test_tmp("study_best");
    a.ctx = text.ctx = tt_create(NULL);
    a.seed = 1;
    a.whole = 1;
    a.o = arm_options(arm_named("base_control"));
    a.o.pretrain_steps = 200;
    a.o.prompts = 8;
    TT_REQUIRE(open_base(&a) == TT_OK);
    for (k = 0; k < 3; k++) { remove(path_of(a.o.out, "seed-1/%s/train.state", k == 0 ? "whole" : k == 1 ? "halves" : "short")); }
    train_plain(&a, "whole", 6, 2, 0);
    TT_CHECK_OK(a.ctx, tt_file_read(a.ctx, path_of(a.o.out, "seed-1/whole/metrics.jsonl"), &text));
    for (step = 0; step < 6 && at < text.size; step++) {
        size_t size = strcspn(text.data + at, "\n");
        tt_json *line = tt_json_parse(a.ctx, text.data + at, size);
        rewards[step] = tt_json_number(line, "think/own_reward", -1);
        tt_json_free(a.ctx, line);
        at += size + 1;
    }
    for (k = 0; k < 3; k++) {
        if (rewards[2 * k] + rewards[2 * k + 1] > best) { best = rewards[2 * k] + rewards[2 * k + 1]; window = k; }
    }
    TT_CHECK(best > 0 && window < 2);              /* else "last" would do */
    train_plain(&a, "short", 2 * window + 2, 0, 0);      /* the same run, as far as there */
    snprintf(kept, sizeof kept, "%s", path_of(a.o.out, "seed-1/whole/best"));
    snprintf(other, sizeof other, "%s", path_of(a.o.out, "seed-1/short"));
    same_file(kept, other, "model.safetensors");
    for (k = 0; k < 3; k++) { train_plain(&a, "halves", 6, 2, 1); }      /* one step each, then all */
    train_plain(&a, "halves", 6, 2, 0);
    snprintf(other, sizeof other, "%s", path_of(a.o.out, "seed-1/halves/best"));
    same_file(kept, other, "model.safetensors");
    tt_text_free(&text);
    close_base(&a);
    tt_destroy(a.ctx);
}

/* ---- tasks ---- */
TT_TEST(every_task_runs_from_scratch) {
    static const char *const tasks[] = {"signs", "guess", "countdown", "arithmetic"};
    int k, n_tasks = tt_test_exhaustive() ? 4 : 1;
    for (k = 0; k < n_tasks; k++) {
        app a;
        tt_text json = TT_INIT;
        tt_model_teacher *model = NULL;
        tt_trainer_desc desc;
        tt_teacher teacher;
        tt_model *student;
        char metrics[300];
        start_quick(&a, "study_tasks", "thinktune", k);
        json.ctx = a.ctx;
        a.o.task = tasks[k];
        a.o.steps = 2;
        TT_REQUIRE(open_base(&a) == TT_OK);
        TT_CHECK_STR(a.task.name, tasks[k]);
        TT_CHECK_OK(a.ctx, evaluate(&a, a.base, "base", &json));
        TT_CHECK_OK(a.ctx, write_gate(&a, &json));
        student = new_student(&a);
        model = make_teacher(&a, a.base);
        TT_REQUIRE(model && student);
        teacher = tt_teacher_model(model);
        desc = arm_desc(&a, student, "thinktune", &teacher);
        remove(path_of(a.o.out, "seed-%d/arm/train.state", k));
        TT_CHECK_OK(a.ctx, tt_make_dirs(a.ctx, path_of(a.o.out, "seed-%d/arm", k)));
        snprintf(metrics, sizeof metrics, "%s", path_of(a.o.out, "seed-%d/arm/metrics.jsonl", k));
        TT_CHECK_OK(a.ctx, train_student(&a, "arm", &desc, metrics, 0));
        tt_model_teacher_destroy(model);
        tt_model_destroy(student);
        tt_text_free(&json);
        close_base(&a);
        tt_destroy(a.ctx);
    }
}

/* ---- the prompt of a question from a file ---- */
static void write_lines(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    TT_REQUIRE(f != NULL);
    fputs(text, f);
    fclose(f);
}

TT_TEST(a_prompt_has_system_message_turns_question_and_beginning) {
    static const struct { const char *lines, *error; } bad[] = {
        {"{\"role\":\"user\",\"content\":\"a\"}\n", "ends with a turn of the user"},
        {"{\"role\":\"assistant\",\"content\":\"a\"}\n", "line 1: expected {\"role\": \"user\""},
        {"{\"role\":\"user\",\"content\":\"a\"}\n{\"role\":\"user\",\"content\":\"b\"}\n", "line 2: expected {\"role\": \"assistant\""},
        {"{\"role\":\"user\"}\n", "line 1: expected {\"role\": \"user\", \"content\": a text}"},
        {"{\"role\":\"user\",\"content\":7}\n", "content"}
    };
    char path[PATH_SIZE];
    app a;
    size_t i;
    start_quick(&a, "study_prompt", "thinktune", 1);
    snprintf(path, sizeof path, "%s", tt_test_tmp("turns.jsonl"));
    write_lines(path, "{\"role\":\"user\",\"content\":\"2 + 2 ?\"}\n{\"role\":\"assistant\",\"content\":\"The answer is 4.\"}\n");
    a.o.prompt = "{question} ?";
    TT_CHECK_OK(a.ctx, open_prompt(&a));
    TT_CHECK_STR(a.prompt.data, "{question} ?");
    a.prompt.size = 0;
    a.o.system = "Be brief.";
    a.o.few_shot = path;
    a.o.prefill = "\n\nThe answer is";
    TT_CHECK_OK(a.ctx, open_prompt(&a));
    TT_CHECK_STR(a.prompt.data, "Be brief.\n\n2 + 2 ?\n\nThe answer is 4.\n\n{question} ?\n\nThe answer is");
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_lines(path, bad[i].lines);
        TT_CHECK(open_prompt(&a) != TT_OK);
        TT_CHECK_CONTAINS(tt_error(a.ctx), bad[i].error);
        TT_CHECK_CONTAINS(tt_error(a.ctx), "turns.jsonl");
    }
    tt_text_free(&a.prompt);
    tt_text_free(&a.settings);
    tt_destroy(a.ctx);
}

TT_TEST(the_separator_stands_before_what_the_teacher_says) {
    app a;
    tt_rollouts attempts = TT_INIT;
    tt_think_metrics m = TT_INIT;
    tt_text said;
    tt_teacher teacher;
    int i;
    start_quick(&a, "study_notes", "base", 1);
    a.o.separator = " so";
    TT_REQUIRE(open_base(&a) == TT_OK);
    teacher = tt_signs_teacher(a.signs);
    TT_CHECK_OK(a.ctx, attempt_questions(&a, a.base, 1, 0, 64, 0, 1, &attempts));
    TT_CHECK_OK(a.ctx, guide_all(&a, &teacher, &attempts, &m));
    TT_CHECK(m.n_guided > 0);
    said = new_text(&a);
    for (i = 0; i < attempts.n; i++) {
        if (!attempts.items[i].guided) { continue; }
        said.size = 0;
        TT_CHECK_OK(a.ctx, feedback_of(&a, &attempts.items[i], &said));
        if (!TT_CHECK(strncmp(said.data, " so", 3) == 0)) { break; }
    }
    tt_text_free(&said);
    tt_rollouts_free(&attempts);
    close_base(&a);
    tt_destroy(a.ctx);
}

/* ---- the marker ---- */
/* Independent of study.c: probability of the marker at the last place of an attempt, from the model's own logits. */
static double probability_at_end(app *a, tt_model *model, const tt_rollouts *attempts, int index) {
    tt_batch *batch = tt_rollouts_batch(a->ctx, attempts, &index, 1);
    tt_tensor *logits = tt_model_logits(model, tt_gather_rows(a->ctx, tt_model_forward(model, batch), batch->target_rows + batch->n_targets - 1, 1));
    float *values = (float *)malloc(logits->size * sizeof *values);
    double sum = 0, p;
    size_t i;
    TT_CHECK_OK(a->ctx, tt_tensor_get(logits, values));
    for (i = 0; i < logits->size; i++) { sum += exp((double)values[i]); }
    p = exp((double)values[tt_token_id(a->tokenizer, "\n\n")]) / sum;
    free(values);
    tt_step_reset(a->ctx);
    return p;
}
TT_TEST(the_marker_gets_the_probability_asked_for) {
    static const double wanted[3] = {1e-2, 1e-4, 1e-7};
    app a;
    tt_rollouts attempts = TT_INIT;
    tt_model *student;
    int k, i;
    start_quick(&a, "study_marker", "base", 1);
    TT_REQUIRE(open_base(&a) == TT_OK);
    TT_CHECK_OK(a.ctx, attempt_questions(&a, a.base, 1, 0, 64, 0, 1, &attempts));
    student = new_student(&a);
    for (k = 0; k < 3; k++) {
        double p = 0, mean = 0;
        TT_CHECK_OK(a.ctx, set_marker(&a, student, &attempts, wanted[k]));
        TT_CHECK_OK(a.ctx, get_marker(&a, student, &attempts, &p));
        for (i = 0; i < attempts.n; i++) { mean += probability_at_end(&a, student, &attempts, i) / attempts.n; }
        TT_CHECK_NEAR(p / wanted[k], 1, 0.01);
        TT_CHECK_NEAR(mean / wanted[k], 1, 0.01);
    }
    tt_model_destroy(student);
    tt_rollouts_free(&attempts);
    close_base(&a);
    tt_destroy(a.ctx);
}

#ifdef _WIN32
TT_TEST(an_interrupted_study_ends_with_the_same_bytes) { TT_SKIP("no interval timer"); }
TT_TEST(a_folder_belongs_to_one_run) { TT_SKIP("no lock"); }
#else
TT_TEST(a_folder_belongs_to_one_run) {
    tt_context *ctx = tt_create(NULL);
    const char *out = tt_test_tmp("claimed");
    pid_t other;
    int status = 0;
    TT_CHECK_OK(ctx, claim_folder(ctx, out));
    other = fork();
    if (other == 0) { _exit(claim_folder(ctx, out) == TT_ERR_IO && strstr(tt_error(ctx), "another run") ? 7 : 1); }
    TT_CHECK(other > 0 && waitpid(other, &status, 0) == other && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    tt_destroy(ctx);
}
/* ---- a study that is stopped again and again ends as the one that never was ---- */
static int run_study(const char *out, const char *arms_to_run, int stop_after_ms) {
    char *argv[] = {(char *)"study", (char *)"--quick", (char *)"--seeds", (char *)"1", (char *)"--out", NULL, (char *)"--only", NULL,
                    (char *)"--pretrain-steps", (char *)(tt_test_exhaustive() ? "10000" : "4000"), NULL};
    struct itimerval timer;
    memset(&timer, 0, sizeof timer);
    argv[5] = (char *)(uintptr_t)out;
    argv[7] = (char *)(uintptr_t)arms_to_run;
    stop_requested = 0;
    signal(SIGALRM, on_signal);
    timer.it_value.tv_usec = stop_after_ms * 1000;
    setitimer(ITIMER_REAL, &timer, NULL);
    return study_main(10, argv);
}
TT_TEST(an_interrupted_study_ends_with_the_same_bytes) {
    static const char every_kind[] = "base,thinktune,grpo_tokens,sft,base_incoherent,incoherent_thinktune,"
                                     "incoherent_thinktune_long,incoherent_grpo_long,teacher_ema,rare_formula_1e-4";
    const char *list = tt_test_exhaustive() ? every_kind : "base,teacher_ema";
    char whole[200], parts[200], command[500];
    int i, stops = 0;
    snprintf(whole, sizeof whole, "%s", tt_test_tmp("study_whole"));
    snprintf(parts, sizeof parts, "%s", tt_test_tmp("study_parts"));
    snprintf(command, sizeof command, "rm -rf '%s' '%s'", whole, parts);
    TT_REQUIRE(system(command) == 0);
    TT_CHECK_INT(run_study(whole, list, 0), 0);
    for (i = 1; i <= 8; i++) { stops += run_study(parts, list, (tt_test_exhaustive() ? 80 : 40) * i) == 130; }
    TT_CHECK(stops >= 3);
    TT_CHECK_INT(run_study(parts, list, 0), 0);
    same_file(whole, parts, "results.jsonl");
    same_file(whole, parts, "table.md");
    same_file(whole, parts, "report.html");
    same_file(whole, parts, "seed-1/teacher_ema/metrics.jsonl");
    if (tt_test_exhaustive()) {
        same_file(whole, parts, "seed-1/thinktune/metrics.jsonl");
        same_file(whole, parts, "seed-1/incoherent_thinktune/metrics.jsonl");
    }
    TT_CHECK_INT(run_study(parts, list, 0), 0);      /* nothing is left to do */
    same_file(whole, parts, "results.jsonl");
}
#endif

TT_MAIN(intervals_and_p_are_those_worked_by_hand, survival_counts_those_still_watched, pictures_have_room_for_every_run, ticks_are_round_numbers,
        a_page_marks_checks_verdicts_and_answers, other_settings_are_named, a_line_leaves_out_the_figures_that_do_not_fit, a_clock_that_is_set_back_keeps_nobody_waiting,
        the_time_left_is_the_whole_runs_at_the_pace_of_this_machine, claims_count_seeds_and_pair_them, the_predicted_push_is_the_shapings,
        ablations_change_one_factor, a_base_of_low_coherence_reads_notes_in_its_first_half_alone,
        bases_with_and_without_late_notes_are_not_taken_for_each_other, corruption_hands_feedback_round, the_best_checkpoint_is_that_of_the_best_steps, every_task_runs_from_scratch, a_prompt_has_system_message_turns_question_and_beginning, the_separator_stands_before_what_the_teacher_says,
        the_marker_gets_the_probability_asked_for, a_folder_belongs_to_one_run,
        an_interrupted_study_ends_with_the_same_bytes)
