/* examples/rewards.h, tasks.h and evaluate.h: answers, rewards, generated puzzles, and the statistics of an evaluation. */
#include "../thinktuning.h"
#include "../examples/tasks.h"
#include "../examples/evaluate.h"
#include "tt_test.h"

static float score(tt_status (*reward)(void *, const tt_reward_input *, float *), void *user, const char *question, const char *answer, const char *response) {
    tt_reward_input in = TT_INIT;
    float out = -1;
    in.question = question;
    in.answer = answer;
    in.response = response;
    in.response_size = strlen(response);
    in.stopped = 1;
    TT_CHECK_INT(reward(user, &in, &out), TT_OK);
    return out;
}
static int equal(const char *gold, const char *said) { return tt_answer_equal(gold, strlen(gold), said, strlen(said)); }

/* ---- answers ---- */
TT_TEST(answers_are_equal_by_text_value_or_parts) {
    static const struct { const char *gold, *said; int same; } cases[] = {
        {"42", "42", 1}, {"42", "42.0", 1}, {"42", "42.", 1}, {"42", "43", 0}, {"42", "4", 0}, {"", "", 0}, {"1,234", "1234", 1}, {"1,234,567", "1234567.00", 1},
        {"1234", "12,34", 0}, {"1,23", "123", 0}, {"-5", "5", 0}, {"-5", " - 5 ", 1}, {"0.5", ".5", 1}, {"0.3333333", "\\frac{1}{3}", 0},
        {"\\frac{1}{2}", "0.5", 1}, {"\\frac{1}{2}", "1/2", 1}, {"\\frac{1}{2}", "\\frac12", 1}, {"\\frac{1}{2}", "\\dfrac{2}{4}", 1}, {"\\frac{1}{2}", "\\tfrac 1 2", 1},
        {"\\frac{1}{2}", "2/1", 0}, {"\\frac{x}{2}", "\\frac x2", 1}, {"\\frac{\\pi}{2}", "\\frac\\pi2", 1}, {"\\frac{\\pi}{2}", "\\pi/2", 1}, {"\\frac{\\pi}{2}", "\\frac{2}{\\pi}", 0},
        {"2\\sqrt{3}", "2 \\sqrt 3", 1}, {"2\\sqrt{3}", "\\sqrt{12}", 1}, {"2\\sqrt{3}", "3\\sqrt{2}", 0}, {"\\sqrt[3]{8}", "2", 1}, {"\\sqrt[3]{8}", "8^{1/3}", 1},
        {"2\\frac{1}{2}", "2.5", 1}, {"2^{10}", "1024", 1}, {"-2^2", "-4", 1}, {"2^3^2", "512", 1}, {"6 - 5 - 4", "-3", 1}, {"24/4/2", "3", 1}, {"2(3+4)", "14", 1},
        {"50\\%", "50", 1}, {"50%", "50", 1}, {"\\$18.90", "18.9", 1}, {"$\\frac{3}{4}$", "0.75", 1}, {"90^\\circ", "90", 1}, {"90^{\\circ}", "90", 1},
        {"5\\text{ cm}", "5", 1}, {"5\\mbox{ cm}^2", "5", 1}, {"5\\mbox{ cm}^2", "25", 0}, {"5 cm", "5 km", 0}, {"\\text{Evelyn}", "Evelyn", 1}, {"\\text{(C)}", "(C)", 1}, {"\\text{even}", "\\text{odd}", 0},
        {"\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)", 1}, {"(3, 4)", "(4, 3)", 0}, {"(3, 4)", "[3, 4]", 0}, {"(3,4)", "(3,4,5)", 0}, {"(1,234)", "(1,234)", 1},
        {"(1,234)", "1234", 0}, {"1, 2, 3", "1,2,3.0", 1}, {"1, 2, 3", "1,2", 0}, {"((1,2),3)", "((1,2.0),3)", 1}, {"(1,2),(3,4)", "(1,2.0),(3,4)", 1}, {"(1,2),(3,4)", "(1,2),(3,5)", 0},
        {"[0,1)", "[0, 1.0)", 1}, {"[0,1)", "[0,1]", 0}, {"(-\\infty, 2]", "(-\\infty,2]", 1},
        {"x = 7", "7", 1}, {"7", "x=7", 1}, {"x^2+1", "x^2 + 1", 1}, {"x^2+1", "x^2-1", 0}, {"p - q", "p-q", 1}, {"3 \\times 4", "12", 1}, {"12 \\div 4", "3", 1},
        {"1/0", "1/0", 1}, {"1/0", "2/0", 0}, {"((1", "(1", 0}, {"1..2", "1.2", 0}, {"a\\leftarrow b", "ab", 0}, {"0", "-0", 1}, {"1e5", "100000", 1}, {"2\\sqrt{3}", "3.4641016151", 0}, {"\\pi", "3.14159265359", 0},
        {"1 2", "12", 0}, {"2\\text{ or }3", "23", 0}, {"3-5", "-2", 0}, {"2024-05-06", "2013", 0}, {"x^{2}", "x^2", 1}, {"0^0", "1", 0}
    };
    char deep[6000];
    size_t i, n;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!TT_CHECK_INT(equal(cases[i].gold, cases[i].said), cases[i].same) || !TT_CHECK_INT(equal(cases[i].said, cases[i].gold), cases[i].same)) {
            printf("  %s and %s\n", cases[i].gold, cases[i].said);
        }
    }
    for (n = 0, i = 0; i < 700; i++) { n += (size_t)snprintf(deep + n, sizeof deep - n, "\\frac{"); }      /* nothing a model writes may end the program */
    TT_CHECK_INT(equal("1", deep), 0);
    TT_CHECK_INT(equal(deep, deep), 1);
    memset(deep, '(', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    TT_CHECK_INT(equal("1", deep), 0);
    memset(deep, '-', 500);
    deep[500] = 0;
    TT_CHECK_INT(equal("1", deep), 0);
    TT_CHECK_INT(tt_answer_equal("12", 1, "13", 1), 1);      /* sizes count, not the terminator */
}
/* Each gold answer of MATH-500 equals the one in the box of its solution, and hardly any equals its neighbour's. */
TT_TEST(answers_of_math500_equal_those_of_their_solutions) {
    const char *path = tt_test_data("corpora/math500/test.jsonl");
    tt_context *ctx = tt_create(NULL);
    tt_text file = TT_INIT;
    tt_json *last = NULL;
    size_t at = 0;
    int n = 0, right = 0, confused = 0;
    if (!path) { tt_destroy(ctx); TT_SKIP("no MATH-500"); }
    file.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &file));
    while (at < file.size) {
        size_t size = strcspn(file.data + at, "\n");
        tt_json *record = tt_json_parse(ctx, file.data + at, size);
        const char *gold = tt_json_text(record, "answer", "");
        int good = score(tt_reward_boxed, NULL, "", gold, tt_json_text(record, "solution", "")) == 1;
        if (!good) { printf("  %s\n", gold); }
        right += good;
        confused += last && equal(tt_json_text(last, "answer", ""), gold);
        n++;
        tt_json_free(ctx, last);
        last = record;
        at += size + 1;
    }
    tt_json_free(ctx, last);
    tt_text_free(&file);
    TT_CHECK_INT(n, 500);
    TT_CHECK_INT(right, 500);
    TT_CHECK(confused < 10);
    tt_destroy(ctx);
}
TT_TEST(rewards_read_the_answer_where_it_stands) {
    tt_reward_input in = TT_INIT;
    float reward = -1;
    TT_CHECK(score(tt_reward_exact, NULL, "", " yes\n", "yes ") == 1 && score(tt_reward_exact, NULL, "", "yes", "yes!") == 0 && score(tt_reward_exact, NULL, "", " ", "") == 0);
    TT_CHECK(score(tt_reward_last_number, NULL, "", " answer 7", "3 and 7") == 1 && score(tt_reward_last_number, NULL, "", "7", "7 and 3") == 0);
    TT_CHECK(score(tt_reward_last_number, NULL, "", "7", "none") == 0 && score(tt_reward_last_number, NULL, "", "none", "none") == 0);
    TT_CHECK(score(tt_reward_boxed, NULL, "", "\\frac{1}{2}", "it is \\boxed{\\frac12}.") == 1 && score(tt_reward_boxed, NULL, "", "7", "7") == 0);
    TT_CHECK(score(tt_reward_boxed, NULL, "", "7", "\\boxed{8} no, \\boxed{7}") == 1 && score(tt_reward_boxed, NULL, "", "7", "\\boxed{7} no, \\boxed{8}") == 0);
    TT_CHECK(score(tt_reward_boxed, NULL, "", "7", "\\boxed{7") == 0 && score(tt_reward_boxed, NULL, "", "8", "\\boxed{8} or \\boxed{7") == 1);
    TT_CHECK(score(tt_reward_answer, NULL, "", "42", "\\boxed{42 apples}") == 1 && score(tt_reward_answer, NULL, "", "42", "\\boxed{x+42}") == 0);
    TT_CHECK(score(tt_reward_answer, NULL, "", "42", "\\boxed{42} or 7") == 1 && score(tt_reward_answer, NULL, "", "42", "so 40 + 2 = 42 apples") == 1);
    in.question = "";
    in.answer = in.response = "42";
    in.response_size = 2;
    TT_CHECK_INT(tt_reward_answer(NULL, &in, &reward), TT_OK);      /* did not stop */
    TT_CHECK(reward == 0);
}
/* Rows {"kind", "reward", "answer", "response", "want"}: all of one kind, or of every kind where it is NULL. */
static void grade_rows(const char *path, const char *kind) {
    static const char *const names[] = {"exact", "last_number", "boxed", "answer"};
    tt_context *ctx = tt_create(NULL);
    tt_text file = TT_INIT;
    size_t at = 0;
    int n = 0;
    file.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &file));
    while (at < file.size) {
        size_t size = strcspn(file.data + at, "\n");
        tt_json *row = tt_json_parse(ctx, file.data + at, size);
        if (!kind || strcmp(tt_json_text(row, "kind", ""), kind) == 0) {
            const char *response = tt_json_text(row, "response", "");
            tt_reward_input in = TT_INIT;
            tt_text gold = TT_INIT, said = TT_INIT;
            float reward = -1;
            int place = 0;
            while (strcmp(names[place], tt_json_text(row, "reward", "")) != 0) { place++; }
            in.question = "";
            in.answer = tt_json_get(row, "answer")->string;
            in.response = response;
            in.response_size = strlen(response);
            in.stopped = 1;
            gold.ctx = said.ctx = ctx;
            TT_CHECK_OK(ctx, tt_answer_grade((tt_answer_place)(place + 1), &in, &reward, &gold, &said));
            if (!TT_CHECK((double)reward == tt_json_number(row, "want", -1))) {
                printf("  %.*s\n  read %s and %s\n", (int)size, file.data + at, gold.size ? gold.data : "", said.size ? said.data : "");
            }
            tt_text_free(&gold);
            tt_text_free(&said);
            n++;
        }
        tt_json_free(ctx, row);
        at += size + 1;
    }
    TT_CHECK(n > 3);
    tt_text_free(&file);
    tt_destroy(ctx);
}
static const char *const rows = "tests/golden/rewards.jsonl";
TT_TEST(signs_belong_to_their_numbers) { grade_rows(rows, "sign"); }
TT_TEST(fractions_and_mixed_numbers_are_read) { grade_rows(rows, "fraction"); }
TT_TEST(numbers_are_compared_to_their_last_digit) { grade_rows(rows, "exact"); }
TT_TEST(thousands_are_read_however_they_are_parted) { grade_rows(rows, "thousands"); }
TT_TEST(units_count_only_against_others) { grade_rows(rows, "unit"); }
TT_TEST(headings_hide_no_answer) { grade_rows(rows, "heading"); }
TT_TEST(boxes_are_seen_in_every_spelling) { grade_rows(rows, "box"); }
TT_TEST(answers_need_not_be_numbers) { grade_rows(rows, "text"); }
TT_TEST(answers_are_found_in_every_surrounding) { grade_rows(rows, "place"); }
TT_TEST(what_is_in_doubt_is_not_right) { grade_rows(rows, "doubt"); }
TT_TEST(last_numbers_and_exact_texts_are_compared) { grade_rows(rows, "last number"); grade_rows(rows, "exact text"); }
TT_TEST(reward_cases_of_public_reports) {
    const char *path = tt_test_data("cases/rewards.jsonl");
    if (!path) { TT_SKIP("no cases/rewards.jsonl"); }
    grade_rows(path, NULL);
}
TT_TEST(numeric_golds_keep_their_digits) {
    static const char *const golds[] = {"12345678901234567890", "0.30000000000000004", "1e-07", "1000000000000000000000", "-7"};
    const char *path = tt_test_tmp("digits.jsonl");
    tt_context *ctx = tt_create(NULL);
    tt_text lines = TT_INIT, question = TT_INIT, answer = TT_INIT;
    tt_jsonl *data;
    tt_task task;
    size_t i;
    lines.ctx = question.ctx = answer.ctx = ctx;
    for (i = 0; i < 5; i++) { TT_CHECK_OK(ctx, tt_text_format(&lines, "{\"question\":\"q\",\"answer\":%s}\n", golds[i])); }
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, lines.data, lines.size));
    data = tt_jsonl_load(ctx, path);
    TT_REQUIRE(data != NULL);
    TT_CHECK_OK(ctx, tt_jsonl_hold_out(data, 0));
    task = tt_task_jsonl(data, "{question}", "<end>");
    for (i = 0; i < 5; i++) {
        answer.size = 0;
        TT_CHECK_OK(ctx, task.question(task.user, 0, i, &question, &answer));
        TT_CHECK_STR(answer.data, golds[i]);
    }
    tt_text_free(&lines);
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_jsonl_destroy(data);
    tt_destroy(ctx);
}
TT_TEST(answers_written_in_other_ways_are_one_vote) {
    static const char *const responses[] = {"it is 3/4.", "\\boxed{\\frac{3}{4}}", "so 0.75 km", "#### .75", "x = $\\frac34$", "75/100"};
    tt_context *ctx = tt_create(NULL);
    size_t i;
    for (i = 0; i < sizeof responses / sizeof *responses; i++) {
        tt_reward_input in = TT_INIT;
        tt_text vote = TT_INIT;
        vote.ctx = ctx;
        in.response = responses[i];
        in.response_size = strlen(in.response);
        TT_CHECK_OK(ctx, tt_extract_answer(NULL, &in, &vote));
        TT_REQUIRE(vote.size > 0);
        TT_CHECK_STR(vote.data, "3/4");
        tt_text_free(&vote);
    }
    tt_destroy(ctx);
}
/* Whatever a model writes is graded: pieces of answers in random order. */
TT_TEST(no_response_is_too_strange_to_be_graded) {
    static const char *const pieces[] = {
        "\\boxed", "\\fbox", "{", "}", "####", "\n", " ", "$", "\\(", "\\)", "\\[", "-", "\xE2\x88\x92", "3", "4.5", "/", "2/3", "\\frac", "\\sqrt", "\\text{", "^",
        "_", "=", ",", "000", "(", "]", "%", "<<", ">>", "<a>", "\\", "answer", "\xC2", "\xE2\x80", "\xF0", "e9", "1e999", "99999999999999999999", "\\pi", ":", "."
    };
    char text[600];
    uint64_t i, n_texts = tt_test_exhaustive() ? 4000 : 1000;
    for (i = 0; i < n_texts; i++) {
        size_t n = 0, k, size;
        uint64_t j;
        text[0] = 0;
        for (j = 0; j < 12 + i % 40; j++) {
            k = (size_t)(tt_random(7, i, j) % (sizeof pieces / sizeof *pieces));
            size = strlen(pieces[k]);
            if (n + size < sizeof text) { memcpy(text + n, pieces[k], size + 1); n += size; }
        }
        TT_CHECK(score(tt_reward_answer, NULL, "", "zebra", text) == 0);
        TT_CHECK(score(tt_reward_last_number, NULL, "", "31415", text) == 0);
        TT_CHECK(equal(text, "zebra") == 0 && equal("31415", text) == 0);
    }
}
TT_TEST(formats_are_patterns) {
    static char think[] = "<think>*</think>*<answer>*</answer>";
    static char all[] = "*", word[] = "yes", tail[] = "*a*b";
    TT_CHECK(score(tt_reward_format, think, "", "", "<think>a</think>\n<answer>b</answer>") == 1);
    TT_CHECK(score(tt_reward_format, think, "", "", " <think></think><answer></answer>\n") == 1);
    TT_CHECK(score(tt_reward_format, think, "", "", "<think>a<answer>b</answer>") == 0);
    TT_CHECK(score(tt_reward_format, think, "", "", "<answer>b</answer><think>a</think>") == 0);
    TT_CHECK(score(tt_reward_format, think, "", "", "x<think>a</think><answer>b</answer>") == 0);
    TT_CHECK(score(tt_reward_format, all, "", "", "") == 1 && score(tt_reward_format, all, "", "", "x") == 1);
    TT_CHECK(score(tt_reward_format, word, "", "", "yes") == 1 && score(tt_reward_format, word, "", "", "yes!") == 0 && score(tt_reward_format, word, "", "", "ye") == 0);
    TT_CHECK(score(tt_reward_format, tail, "", "", "aabab") == 1 && score(tt_reward_format, tail, "", "", "aaba") == 0);
}
/* ---- cases of TRL's tests/test_rewards.py, with the rewards they expect ---- */
/* TestThinkFormatReward. Its last two cases have a second <think>, which a pattern cannot forbid. */
TT_TEST(trl_wants_thoughts_in_their_tags) {
    static const char *const valid[] = {
        "<think>This is my reasoning.</think>This is my answer.", "<think>\nThis is my reasoning.\n</think>\nThis is my answer.",
        "<think>\nThis is\nmy reasoning.\n</think>\nThis is my answer.", "<think>\nThis is <some tag> my reasoning.</think>\nThis is my answer.",
        "<think></think>\nThis is my answer."
    };
    static const char *const invalid[] = {
        "<think>\nThis is my reasoning.\nThis is my answer.", "<think>This is my reasoning.\nThis is my answer.", "This is my reasoning. This is my answer.",
        "This is my reasoning.\nThis is my answer.", "This is my reasoning.</think>\nThis is my answer.", "This is my reasoning.</think>This is my answer.",
        "This<think>is my reasoning.</think>\nThis is my answer."
    };
    static const char *const second[] = {
        "<think>This is<think>my reasoning.</think></think>This is my answer.", "<think>This is</think>\nmy\n<think>reasoning.</think>\nThis is my answer."
    };
    static char pattern[] = "<think>*</think>*";
    size_t i;
    for (i = 0; i < sizeof valid / sizeof *valid; i++) { TT_CHECK(score(tt_reward_format, pattern, "", "", valid[i]) == 1); }
    for (i = 0; i < sizeof invalid / sizeof *invalid; i++) { TT_CHECK(score(tt_reward_format, pattern, "", "", invalid[i]) == 0); }
    for (i = 0; i < sizeof valid / sizeof *valid; i++) { TT_CHECK(score(tt_reward_think_format, NULL, "", "", valid[i]) == 1); }
    for (i = 0; i < sizeof invalid / sizeof *invalid; i++) { TT_CHECK(score(tt_reward_think_format, NULL, "", "", invalid[i]) == 0); }
    for (i = 0; i < sizeof second / sizeof *second; i++) { TT_CHECK(score(tt_reward_think_format, NULL, "", "", second[i]) == 0); }
}
/* TestAccuracyReward: right answer as LaTeX and as fraction, wrong answers with and without LaTeX. */
TT_TEST(trl_compares_boxed_answers) {
    static const struct { const char *gold, *said; float want; } cases[] = {
        {"\\frac{63}{400}", "\\boxed{\\frac{63}{400}}", 1}, {"63/400", "\\boxed{\\frac{63}{400}}", 1},
        {"\\frac{63}{400}", "\\boxed{\\frac{64}{400}}", 0}, {"6", "\\boxed{3}", 0}, {"\\frac{1}{3}", "\\boxed{\\frac{1}{3}}", 1}
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) { TT_CHECK_NEAR(score(tt_reward_boxed, NULL, "", cases[i].gold, cases[i].said), cases[i].want, 0); }
}
/* A reward of a response of n tokens, which are those given or all alike. */
static float score_tokens(tt_status (*reward)(void *, const tt_reward_input *, float *), void *user, const char *gold, const char *said, const int32_t *tokens, int n) {
    static const int32_t ones[200] = {0};
    tt_reward_input in = TT_INIT;
    float out = (float)NAN;
    in.question = "";
    in.answer = gold;
    in.response = said;
    in.response_size = strlen(said);
    in.stopped = 1;
    in.tokens = tokens ? tokens : ones;
    in.n_tokens = n;
    TT_CHECK_INT(reward(user, &in, &out), TT_OK);
    return out;
}
/* TestCosineScaledReward, and get_repetition_penalty_reward as its documentation shows it: n-grams of 2, penalty -1. */
TT_TEST(trl_scales_by_length_and_repetition) {
    static const struct { const char *said; int n; double want; } cases[] = {
        {"\\boxed{\\frac{1}{3}}", 25, 0.92678}, {"\\boxed{\\frac{1}{3}}", 75, 0.57322}, {"\\boxed{\\frac{1}{2}}", 25, -0.92678}, {"\\boxed{\\frac{1}{2}}", 75, -0.57322},
        {"\\boxed{\\frac{1}{3}}", 50, 0.75}, {"\\boxed{\\frac{1}{2}}", 50, -0.75}, {"\\boxed{\\frac{1}{3}}", 0, 1}, {"\\boxed{\\frac{1}{3}}", 100, 0.5},
        {"\\boxed{\\frac{1}{2}}", 0, -1}, {"\\boxed{\\frac{1}{2}}", 100, -0.5}, {"\\boxed{\\frac{1}{3}}", 200, 0.5}, {"\\boxed{\\frac{1}{2}}", 200, -0.5}
    };
    static const int32_t apart[4] = {1, 2, 3, 4}, alike[5] = {5, 5, 5, 5, 5}, twice[8] = {1, 2, 3, 9, 1, 2, 3, 8};
    tt_repetition pairs = TT_INIT;
    tt_cosine cosine = TT_INIT;
    tt_reward_input in = TT_INIT;
    size_t i;
    float out;
    cosine.max_length = 100;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) { TT_CHECK_NEAR(score_tokens(tt_reward_cosine, &cosine, "\\frac{1}{3}", cases[i].said, NULL, cases[i].n), cases[i].want, 1e-5); }
    cosine.reward = tt_reward_boxed;
    cosine.min_value_wrong = -1;
    cosine.max_value_wrong = -0.5f;
    cosine.max_value_correct = 2;                      /* min_value_correct: 0 */
    TT_CHECK_NEAR(score_tokens(tt_reward_cosine, &cosine, "\\frac{1}{3}", "\\boxed{\\frac{1}{3}}", NULL, 50), 1, 1e-6);
    cosine.reward = tt_reward_countdown;               /* a gold answer that is no number: abstains, as TRL where it cannot parse it */
    TT_CHECK(isnan(score_tokens(tt_reward_cosine, &cosine, "forty two", "(8-2)*4", NULL, 50)));
    cosine.max_length = 0;
    TT_CHECK_INT(tt_reward_cosine(&cosine, &in, &out), TT_ERR_ARG);

    pairs.ngram_size = 2;
    TT_CHECK(score_tokens(tt_reward_repetition, &pairs, "", "", apart, 4) == 0);
    TT_CHECK_NEAR(score_tokens(tt_reward_repetition, &pairs, "", "", alike, 5), -0.75, 1e-7);
    TT_CHECK(score_tokens(tt_reward_repetition, &pairs, "", "", alike, 1) == 0 && score_tokens(tt_reward_repetition, NULL, "", "", alike, 2) == 0);
    TT_CHECK_NEAR(score_tokens(tt_reward_repetition, NULL, "", "", twice, 8), -1.0 / 6, 1e-7);       /* 123 239 391 912 123 238 */
    pairs.max_penalty = -0.5f;
    TT_CHECK_NEAR(score_tokens(tt_reward_repetition, &pairs, "", "", twice, 8), -0.5 * 2 / 7, 1e-7);
    pairs.max_penalty = 0.5f;
    TT_CHECK_INT(tt_reward_repetition(&pairs, &in, &out), TT_ERR_ARG);
}

/* ---- countdown ---- */
TT_TEST(countdown_wants_each_number_once) {
    static const struct { const char *response; int right; } cases[] = {
        {"answer ( 8 - 2 ) * 4", 1}, {"(8-2)*4", 1}, {"the answer: (8-2)*4 = 24", 1}, {"\\boxed{(8 - 2) \\times 4}", 1}, {"\\boxed{\\left(8-2\\right)\\cdot 4}", 1},
        {"<answer> 4*(8-2) </answer>", 1}, {"<answer>4*8</answer> <answer>4*(8-2)</answer>", 1}, {"answer 4 * 8\n\nanswer 4*(8-2)", 1}, {"answer 4*(8-2).", 1},
        {"answer 4 * 8 - 2", 0}, {"answer 4 * 6", 0}, {"answer 24", 0}, {"answer 4 * (8 - 2) * 2 / 2", 0}, {"answer 4*(8-2)+0", 0}, {"answer 8*4-8", 0}, {"", 0},
        {"answer 4*(8-2", 0}, {"answer 4(8-2)", 0}, {"answer 4*(8-2) or so", 0}, {"answer 2^4+8", 0}, {"answer 48/2", 0}, {"answer 8/(2-2)", 0}, {"answer 4 * (8 - 2)\nbecause", 1}
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!TT_CHECK(score(tt_reward_countdown, NULL, " make 24 from 8 2 4", "24", cases[i].response) == (float)cases[i].right)) { printf("  %s\n", cases[i].response); }
    }
    TT_CHECK(score(tt_reward_countdown, NULL, "Use the numbers [8, 2, 4] to make 24.", " answer 4*(8-2)", "(8-2)*4") == 1);
    TT_CHECK(score(tt_reward_countdown, NULL, "8,2,4", "24", "(8-2)*4") == 1);
    TT_CHECK(score(tt_reward_countdown, NULL, "make 5 from 3 2", "5", "(3/2)*2+2") == 0);
    TT_CHECK(score(tt_reward_countdown, NULL, "make 1 from 3 3 1", "1", "(1/3)*3") == 1);      /* thirds are exact enough */
    TT_CHECK(isnan(score(tt_reward_countdown, NULL, "8,2,4", "no target", "(8-2)*4")));
    {   /* an endless nest is no expression, and no end of the program */
        size_t n = 4000000;
        char *nest = (char *)malloc(n + 1);
        memset(nest, '(', n);
        nest[n] = 0;
        TT_CHECK(isnan(score(tt_reward_countdown, NULL, "8,2,4", nest, "24")) && score(tt_reward_countdown, NULL, "8,2,4", "24", nest) == 0);
        free(nest);
    }
}
/* All expressions over three numbers in an order, with two operators and both brackets. */
static int solve(const int *numbers, int target, char *out, size_t size) {
    static const char ops[] = "+-*/";
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    int o, p, q, left;
    for (o = 0; o < 6; o++) {
        double x[3], value = 0;
        for (p = 0; p < 3; p++) { x[p] = numbers[orders[o][p]]; }
        for (p = 0; p < 4; p++) {
            for (q = 0; q < 4; q++) {
                for (left = 0; left < 2; left++) {
                    double a = left ? x[0] : x[1], b = left ? x[1] : x[2], inner, c = left ? 0 : x[0];
                    char op1 = ops[p], op2 = ops[q];
                    inner = op1 == '+' ? a + b : op1 == '-' ? a - b : op1 == '*' ? a * b : a / b;
                    a = left ? inner : c;
                    b = left ? x[2] : inner;
                    value = op2 == '+' ? a + b : op2 == '-' ? a - b : op2 == '*' ? a * b : a / b;
                    if (fabs(value - target) > 1e-9) { continue; }
                    if (left) { snprintf(out, size, "(%d %c %d) %c %d", (int)x[0], op1, (int)x[1], op2, (int)x[2]); }
                    else { snprintf(out, size, "%d %c (%d %c %d)", (int)x[0], op2, (int)x[1], op1, (int)x[2]); }
                    return 1;
                }
            }
        }
    }
    return 0;
}
TT_TEST(countdown_test_set_is_solved_and_checked) {
    const char *path = tt_test_data("corpora/countdown/countdown_cd3_test.jsonl");
    tt_context *ctx = tt_create(NULL);
    tt_text file = TT_INIT;
    size_t at = 0;
    int n = 0;
    if (!path) { tt_destroy(ctx); TT_SKIP("no countdown test set"); }
    file.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &file));
    while (at < file.size) {
        size_t size = strcspn(file.data + at, "\n");
        tt_json *record = tt_json_parse(ctx, file.data + at, size);
        const char *question = tt_json_text(record, "input", ""), *answer = tt_json_text(record, "output", "");
        char right[64] = "", other[16];
        int numbers[3];
        if (TT_CHECK(sscanf(question, "%d,%d,%d", &numbers[0], &numbers[1], &numbers[2]) == 3) && TT_CHECK(solve(numbers, atoi(answer), right, sizeof right))) {
            snprintf(other, sizeof other, "%d", atoi(answer) + 1);
            TT_CHECK(score(tt_reward_countdown, NULL, question, answer, right) == 1);
            TT_CHECK(score(tt_reward_countdown, NULL, question, other, right) == 0);
            TT_CHECK(score(tt_reward_countdown, NULL, question, answer, answer) == 0);
        }
        tt_json_free(ctx, record);
        n++;
        at += size + 1;
    }
    TT_CHECK(n > 200);
    tt_text_free(&file);
    tt_destroy(ctx);
}

/* ---- puzzles ---- */
/* The numbers of a question, in order of size, as one text: what the held-out split is made of. */
static void multiset(const char *question, char *out, size_t size) {
    int numbers[16], n = 0, i, j;
    const char *at = strstr(question, "from");
    at = at ? at : question;
    while (*at) {
        if (*at < '0' || *at > '9') { at++; continue; }
        numbers[n] = (int)strtol(at, (char **)(uintptr_t)&at, 10);
        for (i = n++; i > 0 && numbers[i - 1] > numbers[i]; i--) { j = numbers[i]; numbers[i] = numbers[i - 1]; numbers[i - 1] = j; }
    }
    for (out[0] = 0, i = 0; i < n; i++) { snprintf(out + strlen(out), size - strlen(out), " %d", numbers[i]); }
}
static uint64_t key_of(const char *question) {
    char text[128];
    multiset(question, text, sizeof text);
    return tt_hash(text, strlen(text), 1);
}
TT_TEST(puzzles_are_answered_and_split_by_their_numbers) {
    enum { N = 3000, SLOTS = 1 << 16 };
    static unsigned char seen[SLOTS];
    tt_context *ctx = tt_create(NULL);
    tt_puzzle kind;
    for (kind = TT_PUZZLE_COUNTDOWN; kind <= TT_PUZZLE_GUESS; kind = (tt_puzzle)(kind + 1)) {
        tt_puzzles_desc d = TT_INIT;
        tt_puzzles *p;
        tt_task task;
        tt_text question = TT_INIT, answer = TT_INIT;
        int split, i, both = 0, held_out = 0, lucky = 0, keys[2] = {0, 0};
        question.ctx = answer.ctx = ctx;
        d.kind = kind;
        d.min_n = 3;
        d.max_n = 5;
        d.max_number = 20;
        d.seed = 4;
        memset(seen, 0, sizeof seen);
        p = tt_puzzles_create(ctx, &d);
        TT_REQUIRE(p != NULL);
        task = tt_task_puzzles(p, "{question}", "<end>");
        for (split = 0; split < 2; split++) {
            for (i = 0; i < N; i++) {
                uint64_t slot;
                long target = 0, largest = 0;
                const char *at;
                question.size = answer.size = 0;
                TT_REQUIRE(task.question(task.user, split, (uint64_t)i, &question, &answer) == TT_OK);
                if (!TT_CHECK(score(task.reward, task.user, question.data, answer.data, answer.data) == 1)) { printf("  %s:%s\n", question.data, answer.data); }
                slot = key_of(question.data) % SLOTS;
                keys[split] += !(seen[slot] & (1 << split));
                seen[slot] |= (unsigned char)(1 << split);
                if (kind == TT_PUZZLE_COUNTDOWN) { TT_CHECK(sscanf(question.data, " make %ld", &target) == 1 && target >= 1 && target <= 100); }
                if (kind == TT_PUZZLE_ARITHMETIC) {
                    TT_CHECK(equal(question.data + strlen(" compute"), answer.data + strlen(" answer")));
                    TT_CHECK(score(task.reward, task.user, question.data, answer.data, " answer 12345") == 0);
                }
                if (kind != TT_PUZZLE_GUESS) { continue; }
                for (at = question.data; *at; at++) { if (*at == ' ' && atol(at) > largest) { largest = atol(at); } }
                lucky += atol(answer.data + strlen(" answer")) == largest;
            }
        }
        for (i = 0; i < SLOTS; i++) { both += seen[i] == 3; held_out += seen[i] >= 2; }
        TT_CHECK(both <= keys[0] * keys[1] / SLOTS + 20);      /* slots are shared by chance alone */
        TT_CHECK(held_out > 100);
        if (kind == TT_PUZZLE_GUESS) { TT_CHECK_NEAR(lucky / (2.0 * N), 0.75, 0.03); }
        question.size = answer.size = 0;
        TT_CHECK_OK(ctx, task.question(task.user, 0, 77, &question, &answer));
        i = (int)question.size;
        TT_CHECK_OK(ctx, task.question(task.user, 0, 77, &question, &answer));
        TT_CHECK_BYTES(question.data, question.data + i, (size_t)i);
        tt_text_free(&question);
        tt_text_free(&answer);
        tt_puzzles_destroy(p);
    }
    tt_destroy(ctx);
}
/* ---- documents of the puzzles: read word by word, checked by value ---- */
static tt_puzzles *make_puzzles(tt_context *ctx, tt_puzzle kind) {
    tt_puzzles_desc d = TT_INIT;
    d.kind = kind;
    d.min_n = d.max_n = 3;
    d.max_result = 60;
    d.operators = TT_PLUS | TT_MINUS | TT_TIMES;
    d.seed = 11;
    return tt_puzzles_create(ctx, &d);
}
/* What stands between two marks, NUL-terminated in out; 0 if they are not there in this order. */
static int between(const char *text, const char *from, const char *to, char *out, size_t size) {
    const char *begin = strstr(text, from), *end = begin ? strstr(begin + strlen(from), to) : NULL;
    size_t n;
    if (!end) { return 0; }
    begin += strlen(from);
    n = (size_t)(end - begin);
    if (n >= size) { return 0; }
    memcpy(out, begin, n);
    out[n] = 0;
    return 1;
}
/* Each " a op b =c" of a check must hold; how many there are, or -1. */
static int count_true_steps(const char *reason) {
    const char *at;
    int n = 0;
    for (at = strstr(reason, " ="); at; at = strstr(at + 2, " =")) {
        const char *from = at;
        long a, b, c;
        char op;
        int spaces = 0;
        while (from > reason && spaces < 3) { spaces += *--from == ' '; }
        if (sscanf(from, " %ld %c %ld =%ld", &a, &op, &b, &c) != 4) { return -1; }
        if (c != (op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : c + 1)) { return -1; }
        n++;
    }
    return n;
}
typedef struct told { int teacher, notes, opinion; char question[200], attempt[100], reason[800], answer[100]; } told;
static int read_told(const char *text, told *d) {
    char opinion[32];
    memset(d, 0, sizeof *d);
    if (between(text, "<user>", "<student>", d->question, sizeof d->question)) { return between(text, "<student>", "<end>", d->attempt, sizeof d->attempt); }
    if (!between(text, ">", "<attempt>", d->question, sizeof d->question)) { return 0; }
    d->teacher = strncmp(text, "<mentor>", 8) == 0;
    d->notes = !d->teacher;
    if (d->notes) { return between(text, "<attempt>", "\n\n", d->attempt, sizeof d->attempt) && between(text, "\n\n", "\n\n", d->reason, sizeof d->reason) && between(text, "\n\n so", "<end>", d->answer, sizeof d->answer); }
    if (!between(text, "<attempt>", "<feedback>", d->attempt, sizeof d->attempt) || !between(text, "<opinion>", "</opinion>", opinion, sizeof opinion)) { return 0; }
    d->opinion = strcmp(opinion, " correct") == 0;
    return between(text, "<reason>", "</reason>", d->reason, sizeof d->reason) && between(text, "<phrase> so", "</phrase><stop>", d->answer, sizeof d->answer);
}
static int told_right(tt_puzzle kind, const tt_task *task, const told *d, const char *said) {
    char gold[32];
    if (kind == TT_PUZZLE_ARITHMETIC) { return equal(d->question + strlen(" compute"), said + strlen(" answer")); }
    snprintf(gold, sizeof gold, " answer %ld", strtol(d->question + strlen(" make"), NULL, 10));
    return score(task->reward, task->user, d->question, gold, said) == 1;
}
TT_TEST(puzzle_documents_show_right_checks_of_unseen_questions) {
    enum { N = 3000 };
    static uint64_t held_out[N];
    tt_context *ctx = tt_create(NULL);
    tt_puzzle kind;
    for (kind = TT_PUZZLE_COUNTDOWN; kind <= TT_PUZZLE_GUESS; kind = (tt_puzzle)(kind + 1)) {
        tt_puzzles *p = make_puzzles(ctx, kind);
        tt_task task = tt_task_puzzles(p, "<user>{question}<student>", "<end>");
        tt_tokenizer *tokenizer = tt_puzzles_tokenizer(p);
        tt_text text = TT_INIT, answer = TT_INIT;
        tt_ids ids = TT_INIT;
        int i, k, teachers = 0, notes = 0, rights = 0, lucky = 0, answers = 0, steps;
        text.ctx = answer.ctx = ids.ctx = ctx;
        TT_REQUIRE(p && tokenizer);
        for (i = 0; i < N; i++) {
            text.size = answer.size = 0;
            TT_REQUIRE(task.question(task.user, 1, (uint64_t)i, &text, &answer) == TT_OK);
            held_out[i] = key_of(text.data);
        }
        for (i = 0; i < N; i++) {
            told d;
            size_t from = 0;
            int words = 0;
            const char *c;
            uint64_t key;
            text.size = ids.size = 0;
            TT_REQUIRE(tt_puzzles_document(p, (uint64_t)i, 0, &text, &from) == TT_OK);
            if (!TT_CHECK(read_told(text.data, &d))) { printf("  %s\n", text.data); break; }
            TT_CHECK(strncmp(text.data + from, " answer", 7) == 0 && strncmp(text.data + from, d.attempt, strlen(d.attempt)) == 0);
            teachers += d.teacher;
            notes += d.notes;
            key = key_of(d.question);
            for (k = 0; k < N && held_out[k] != key; k++) { }
            TT_CHECK_INT(k, N);                            /* never a held-out multiset */
            TT_CHECK_OK(ctx, tt_encode(tokenizer, text.data, text.size, TT_SPECIAL_PARSE, &ids));
            for (c = text.data; *c; c++) { words += *c == ' ' || *c == '<' || (*c == '\n' && c[1] == '\n'); }
            TT_CHECK_INT(ids.size, words);                 /* each word and tag one token */
            if (kind != TT_PUZZLE_GUESS) { rights += told_right(kind, &task, &d, d.attempt); }
            if (!d.teacher && !d.notes) { continue; }
            answers++;
            if (kind == TT_PUZZLE_GUESS) {
                long largest = 0, said = -1;
                for (c = d.question; *c; c++) { if (*c == ' ' && atol(c) > largest) { largest = atol(c); } }
                lucky += atol(d.answer + strlen(" answer")) == largest;
                TT_CHECK(sscanf(strstr(d.reason, "largest"), "largest %ld", &said) == 1 && said == largest);
                if (d.teacher) { TT_CHECK_INT(d.opinion, strcmp(d.attempt, d.answer) == 0); }
                continue;
            }
            steps = count_true_steps(d.reason);
            TT_CHECK(steps >= 2 && steps % 2 == 0 && steps <= 8);
            if (!TT_CHECK(told_right(kind, &task, &d, d.answer))) { printf("  %s\n", text.data); }
            if (d.teacher) { TT_CHECK_INT(d.opinion, told_right(kind, &task, &d, d.attempt)); }
        }
        TT_CHECK_NEAR(teachers / (double)N, 0.35, 0.03);
        TT_CHECK_NEAR(notes / (double)N, 0.2, 0.03);
        if (kind == TT_PUZZLE_ARITHMETIC) { TT_CHECK_NEAR(rights / (double)N, 0.32, 0.04); }
        if (kind == TT_PUZZLE_COUNTDOWN) { TT_CHECK(rights > 0.3 * N && rights < 0.5 * N); }
        if (kind == TT_PUZZLE_GUESS) { TT_CHECK_NEAR(lucky / (double)answers, 0.75, 0.04); }
        text.size = 0;
        for (i = 0; i < 50; i++) { TT_CHECK_OK(ctx, tt_puzzles_document(p, (uint64_t)i, 0.93, &text, NULL)); }
        TT_CHECK(strstr(text.data, "<attempt>") == NULL);      /* post-training on direct answers */
        tt_text_free(&text);
        tt_text_free(&answer);
        tt_ids_free(&ids);
        tt_tokenizer_destroy(tokenizer);
        tt_puzzles_destroy(p);
    }
    tt_destroy(ctx);
}
TT_TEST(puzzle_tokenizers_survive_lost_memory) {
    long n, calls = 0, step = 1;
    for (n = 0; n < 10000000; n += step) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_puzzles *p;
        tt_tokenizer *tokenizer;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        p = make_puzzles(ctx, TT_PUZZLE_GUESS);
        TT_REQUIRE(p != NULL);
        memory.fail_at = n ? memory.calls + n : 0;
        calls = memory.calls;
        tokenizer = tt_puzzles_tokenizer(p);
        calls = memory.calls - calls;
        TT_CHECK_INT(tokenizer != NULL, n == 0 || n > calls);
        if (n && !tokenizer) { TT_CHECK_INT(tt_error_status(ctx), TT_ERR_MEM); }
        tt_tokenizer_destroy(tokenizer);
        tt_puzzles_destroy(p);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
        if (n == 0) { step = 1 + calls / 60; n = 1 - step; }
        else if (n > calls) { break; }
    }
    TT_CHECK(calls > 20);
}
TT_TEST(puzzle_settings_are_checked) {
    tt_context *ctx = tt_create(NULL);
    tt_puzzles_desc d = TT_INIT;
    tt_puzzles *p;
    tt_task task;
    tt_text question = TT_INIT, answer = TT_INIT;
    TT_CHECK(tt_puzzles_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "kind is 0, expected 1..3");
    d.kind = TT_PUZZLE_COUNTDOWN;
    d.max_n = 9;
    TT_CHECK(tt_puzzles_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "max_n 9");
    d.max_n = 0;
    d.max_number = 2;
    TT_CHECK(tt_puzzles_create(ctx, &d) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "max_number is 2");
    d.max_number = 9999;
    d.max_result = 1;
    d.operators = TT_TIMES;
    p = tt_puzzles_create(ctx, &d);
    TT_REQUIRE(p != NULL);
    question.ctx = answer.ctx = ctx;
    task = tt_task_puzzles(p, "{question}", "<end>");
    TT_CHECK_INT(task.question(task.user, 0, 1, &question, &answer), TT_ERR_ARG);      /* there is no such puzzle: an error, no endless search */
    TT_CHECK_CONTAINS(tt_error(ctx), "widen max_number");
    TT_CHECK_INT(tt_puzzles_document(p, 0, 0, &question, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "document of a task: no question was found in 10000 tries");
    tt_puzzles_destroy(p);
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_destroy(ctx);
}

/* ---- statistics ---- */
TT_TEST(intervals_are_those_of_the_textbook) {
    tt_context *ctx = tt_create(NULL);
    tt_interval i = tt_wilson(8, 10);
    double values[200], paired[200];
    tt_interval b, again;
    tt_rng rng = {3, 0, 0};
    int k, run, covered = 0;
    TT_CHECK_NEAR(i.low, 0.490162, 1e-5);
    TT_CHECK_NEAR(i.high, 0.943318, 1e-5);
    i = tt_wilson(0, 10);
    TT_CHECK_NEAR(i.low, 0, 1e-12);
    TT_CHECK_NEAR(i.high, 0.277533, 1e-5);
    TT_CHECK(tt_wilson(0, 0).high == 1);
    for (run = 0; run < 60; run++) {      /* 95 % intervals hold the true mean 95 % of the time */
        for (k = 0; k < 200; k++) { values[k] = tt_rng_uniform(&rng) < 0.3; }
        TT_CHECK_OK(ctx, tt_bootstrap(ctx, values, 200, (uint64_t)run, &b));
        covered += b.low <= 0.3 && b.high >= 0.3;
        TT_CHECK(b.high - b.low > 0.1 && b.high - b.low < 0.15);      /* 2 x 1.96 sqrt(0.3 0.7 / 200) = 0.127 */
    }
    TT_CHECK(covered >= 52 && covered <= 60);
    TT_CHECK_OK(ctx, tt_bootstrap(ctx, values, 200, 5, &b));
    TT_CHECK_OK(ctx, tt_bootstrap(ctx, values, 200, 5, &again));
    TT_CHECK(b.low == again.low && b.high == again.high);
    for (k = 0; k < 200; k++) { paired[k] = (values[k] + 0.01) - values[k]; }      /* a small gain on every question is certain */
    TT_CHECK_OK(ctx, tt_bootstrap(ctx, paired, 200, 5, &b));
    TT_CHECK_NEAR(b.low, 0.01, 1e-9);
    TT_CHECK_NEAR(b.high, 0.01, 1e-9);
    TT_CHECK_INT(tt_bootstrap(ctx, values, 0, 5, &b), TT_ERR_ARG);
    tt_destroy(ctx);
}
TT_TEST(pass_at_k_counts_the_samples_that_miss) {
    int n, c, k, drawn, bits, i;
    for (n = 1; n <= 7; n++) {
        for (c = 0; c <= n; c++) {
            for (k = 1; k <= n; k++) {
                int hits = 0, sets = 0;
                for (bits = 0; bits < 1 << n; bits++) {      /* every set of k samples; the first c are right */
                    for (drawn = 0, i = 0; i < n; i++) { drawn += (bits >> i) & 1; }
                    if (drawn != k) { continue; }
                    sets++;
                    hits += (bits & ((1 << c) - 1)) != 0;
                }
                TT_CHECK_NEAR(tt_pass_at_k(n, c, k), (double)hits / sets, 1e-12);
            }
        }
    }
}

/* ---- evaluation: a model that answers at random, and the numbers recomputed from its responses ---- */
static const char *const specials[] = {"<end>"};
static tt_status ask(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    (void)user;
    (void)split;
    return tt_text_format(question, "q%d", (int)index) == TT_OK ? tt_text_format(answer, "%d", (int)(index % 10)) : TT_ERR_MEM;
}
/* A response is right if its first byte is below 128 plus the answer; it votes for the first byte's lowest two bits. */
static tt_status grade(void *user, const tt_reward_input *in, float *reward) {
    int first = in->response_size ? (unsigned char)in->response[0] : 0;
    if (user && first % 7 == 0) { return TT_ERR_ARG; }
    *reward = first % 4 == 1 || first % 4 == atoi(in->answer) % 4;
    return TT_OK;
}
static tt_status vote(void *user, const tt_reward_input *in, tt_text *answer) {
    int first = in->response_size ? (unsigned char)in->response[0] : 3;
    (void)user;
    return first % 4 == 3 ? TT_OK : tt_text_format(answer, "%d", first % 4);
}
enum { QUESTIONS = 12, SAMPLES = 6 };
typedef struct witness { int n, right[QUESTIONS][SAMPLES], vote[QUESTIONS][SAMPLES]; } witness;
static void watch(void *user, const char *question, const char *response, const tt_outcome *outcome) {
    witness *w = (witness *)user;
    int q = w->n / SAMPLES, s = w->n % SAMPLES, first = response[0] ? (unsigned char)response[0] : 3;
    TT_CHECK_INT(atoi(question + 1), q);
    w->right[q][s] = outcome->final_right;
    w->vote[q][s] = first % 4;
    w->n++;
}
static double majority(const witness *w, int k) {
    int q, i, j, right = 0;
    for (q = 0; q < QUESTIONS; q++) {
        int best = 0, winner = -1;
        for (i = 0; i < k; i++) {
            int votes = 0;
            for (j = 0; j < k && w->vote[q][i] != 3; j++) { votes += w->vote[q][j] == w->vote[q][i]; }
            if (votes > best) { best = votes; winner = i; }
        }
        right += winner >= 0 && w->right[q][winner];
    }
    return right / (double)QUESTIONS;
}
static tt_tokenizer *bytes_tokenizer(tt_context *ctx) {
    tt_tokenizer_desc desc = TT_INIT;
    desc.pretokenizer = TT_PRETOKENIZE_GPT2;
    desc.vocab_size = 300;
    desc.all_bytes = 1;
    desc.special_tokens = specials;
    desc.n_special_tokens = 1;
    return tt_tokenizer_words(ctx, &desc, NULL, 0);
}
static tt_model *tiny_model(tt_context *ctx, const tt_tokenizer *tokenizer) {
    tt_model_config config = TT_INIT;
    config.vocab_size = tt_vocab_size(tokenizer);
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    config.max_position_embeddings = 32;
    return tt_model_create(ctx, &config, 5);
}
static tt_task quiz(void) {
    tt_task task = TT_INIT;
    task.name = "quiz";
    task.question = ask;
    task.reward = grade;
    task.extract = vote;
    task.prompt_template = "{question}";
    task.end_token = "<end>";
    return task;
}
TT_TEST(evaluation_counts_passes_and_votes) {
    static const int ks[4] = {1, 2, 4, 6};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *model = tiny_model(ctx, tokenizer);
    tt_task task = quiz();
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation e;
    witness w;
    double shares[QUESTIONS], pass, mean = 0;
    int q, s, k, c;
    memset(&w, 0, sizeof w);
    d.n_questions = QUESTIONS;
    d.n_samples = SAMPLES;
    d.max_new_tokens = 2;
    d.on_response = watch;
    d.user = &w;
    d.question_accuracy = shares;
    TT_CHECK_OK(ctx, tt_evaluate(model, tokenizer, &task, &d, &e));
    TT_CHECK_INT(w.n, QUESTIONS * SAMPLES);
    TT_CHECK_INT(e.n_pass, 4);
    for (k = 0; k < 4; k++) {
        for (pass = 0, q = 0; q < QUESTIONS; q++) {
            for (c = 0, s = 0; s < SAMPLES; s++) { c += w.right[q][s]; }
            pass += tt_pass_at_k(SAMPLES, c, ks[k]) / QUESTIONS;
            TT_CHECK_NEAR(shares[q], c / (double)SAMPLES, 1e-12);
        }
        TT_CHECK_INT(e.k[k], ks[k]);
        TT_CHECK_NEAR(e.pass_at[k], pass, 1e-12);
        TT_CHECK_NEAR(e.maj_at[k], majority(&w, ks[k]), 1e-12);
        TT_CHECK(e.pass_interval[k].low <= pass && e.pass_interval[k].high >= pass);
        TT_CHECK(e.maj_interval[k].low <= e.maj_at[k] && e.maj_interval[k].high >= e.maj_at[k]);
    }
    for (q = 0; q < QUESTIONS; q++) { mean += shares[q] / QUESTIONS; }
    TT_CHECK_NEAR(e.accuracy, mean, 1e-12);
    TT_CHECK_NEAR(e.pass_at[0], mean, 1e-12);
    TT_CHECK(mean > 0.1 && mean < 0.9 && e.maj_at[3] != e.maj_at[0]);      /* the numbers can tell forms apart */
    TT_CHECK(e.accuracy_interval.low < mean && e.accuracy_interval.high > mean);
    TT_CHECK_INT(e.n_errors, 0);
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
static void count_log(void *user, tt_status status, const char *text) {
    (void)status;
    *(int *)user += strstr(text, "reward quiz of prompt") != NULL;
}
TT_TEST(a_failing_reward_is_counted_not_fatal) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_tokenizer *tokenizer;
    tt_model *model;
    tt_task task = quiz();
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation e;
    int logged = 0;
    desc.log = count_log;
    desc.log_user = &logged;
    ctx = tt_create(&desc);
    tokenizer = bytes_tokenizer(ctx);
    model = tiny_model(ctx, tokenizer);
    d.n_questions = QUESTIONS;
    d.n_samples = SAMPLES;
    d.max_new_tokens = 2;
    task.user = &task;
    TT_CHECK_OK(ctx, tt_evaluate(model, tokenizer, &task, &d, &e));
    TT_CHECK(e.n_errors > 0 && e.n_errors < QUESTIONS * SAMPLES && e.n == QUESTIONS * SAMPLES);
    TT_CHECK_INT(logged, e.n_errors);
    TT_CHECK_STR(tt_error(ctx), "");
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(evaluations_are_a_table_and_json) {
    static const char *const names[2] = {"base", "a longer name"};
    tt_context *ctx = tt_create(NULL);
    tt_evaluation e[2];
    tt_text text = TT_INIT;
    tt_json *json;
    const char *line;
    size_t width = 0;
    int lines = 0;
    text.ctx = ctx;
    memset(e, 0, sizeof e);
    e[0].n_questions = 256;
    e[0].n_pass = 2;
    e[0].k[0] = 1;
    e[0].k[1] = 4;
    e[0].accuracy = 0.1234;
    e[0].accuracy_interval.low = 0.1;
    e[0].accuracy_interval.high = 1;
    e[0].pass_at[1] = 0.5;
    e[0].maj_at[1] = 0.25;
    e[0].behaviour[TT_SELF_CONFLICT] = 0.75;
    e[1].accuracy = 1;
    TT_CHECK_OK(ctx, tt_evaluation_table(e, names, 2, &text));
    TT_CHECK_CONTAINS(text.data, "12.3 [10.0, 100.0]");
    TT_CHECK_CONTAINS(text.data, "a longer name");
    for (line = text.data; *line; line += strcspn(line, "\n") + 1, lines++) {
        if (lines > 0) { TT_CHECK_INT(strcspn(line, "\n"), width); }
        width = strcspn(line, "\n");
    }
    TT_CHECK_INT(lines, 3);
    text.size = 0;
    TT_CHECK_OK(ctx, tt_evaluation_json(&e[0], &text));
    json = tt_json_parse(ctx, text.data, text.size);
    TT_REQUIRE(json != NULL);
    TT_CHECK_NEAR(tt_json_number(json, "accuracy", 0), 0.1234, 1e-9);
    TT_CHECK_NEAR(tt_json_number(json, "accuracy/high", 0), 1, 1e-9);
    TT_CHECK_NEAR(tt_json_number(json, "pass@4", 0), 0.5, 1e-9);
    TT_CHECK_NEAR(tt_json_number(json, "maj@4", 0), 0.25, 1e-9);
    TT_CHECK_NEAR(tt_json_number(json, "self_conflict", 0), 0.75, 1e-9);
    tt_json_free(ctx, json);
    tt_text_free(&text);
    tt_destroy(ctx);
}
/* What a response to "2 + 2 ?" did by the words of the default judge, the last number being the answer. */
static tt_outcome judged(tt_context *ctx, const tt_task *task, const char *response, float reward) {
    tt_reward_errors errors = TT_INIT;
    tt_reward_input in = TT_INIT;
    tt_outcome o;
    in.question = "2 + 2 ?";
    in.answer = "4";
    in.response = response;
    in.response_size = strlen(response);
    in.stopped = 1;
    TT_CHECK_OK(ctx, tt_judge(ctx, task, &in, reward, &errors, &o));
    TT_CHECK_INT(errors.n, 0);
    return o;
}

TT_TEST(reflection_is_read_from_words_without_a_judge) {
    static const struct { const char *response; int attempted, reflects, first; tt_behaviour behaviour; } cases[] = {
        {"it is 4", 1, 0, 1, TT_NO_REFLECTION},
        {"it is 4. Let me check: 2 + 2 holds. 4", 1, 1, 1, TT_SELF_AGREEMENT},
        {"it is 5. wait, that is wrong: 4", 1, 1, 0, TT_SELF_CONFLICT},
        {"it is 4. A mentor would add again: correct. 4", 1, 1, 1, TT_SELF_CONSULTATION},
        {"it is 4. I verify; I should have done so before. 4", 1, 1, 1, TT_SELF_CRITIQUE},
        {"it is 4, wait 4", 1, 1, 1, TT_NO_REFLECTION},
        {"Let me check: 2 + 2 is 4, that is correct. 4", 0, 0, 0, TT_WORKS_FIRST},   /* nothing to reflect on */
        {"I do not know", 0, 0, 0, TT_NO_REFLECTION}
    };
    tt_context *ctx = tt_create(NULL);
    tt_task task = quiz();
    size_t i;
    int by_extract;
    task.reward = tt_reward_last_number;
    task.judge = NULL;
    for (by_extract = 0; by_extract < 2; by_extract++) {
        task.extract = by_extract ? tt_extract_answer : NULL;
        for (i = 0; i < sizeof cases / sizeof *cases; i++) {
            tt_outcome o = judged(ctx, &task, cases[i].response, i < 7);
            int good = TT_CHECK_INT(o.final_right, i < 7) + TT_CHECK_INT(o.attempted, cases[i].attempted);
            good += TT_CHECK_INT(o.reflects, cases[i].reflects) + TT_CHECK_INT(o.first_right, cases[i].first);
            good += TT_CHECK_INT(o.behaviour, cases[i].behaviour);
            if (good < 5) { printf("  %s\n", cases[i].response); }
        }
    }
    tt_destroy(ctx);
}

/* A student that has dropped the attempt and works at once is right, but corrects nothing. */
TT_TEST(what_was_not_attempted_is_not_corrected) {
    static const char *const responses[] = {
        "Let me check: 2 + 2 = 4", "Let me check: 2 + 2 = 4", "5. Let me check: 2 + 2 = 4", "5. Let me check: 2 + 2 = 5"
    };
    tt_context *ctx = tt_create(NULL);
    tt_task task = quiz();
    tt_tally tally = TT_INIT;
    tt_rates r;
    size_t i;
    task.reward = tt_reward_last_number;
    task.judge = NULL;
    task.extract = tt_extract_answer;
    for (i = 0; i < 4; i++) {
        tt_outcome o = judged(ctx, &task, responses[i], i < 3);
        tt_tally_add(&tally, &o, 1, 1);
    }
    r = tt_tally_rates(&tally);
    TT_CHECK_NEAR(r.accuracy, 0.75, 1e-12);
    TT_CHECK_NEAR(r.attempt_rate, 0.5, 1e-12);
    TT_CHECK_NEAR(r.first_accuracy, 0, 1e-12);
    TT_CHECK_NEAR(r.reflection_rate, 0.5, 1e-12);
    TT_CHECK_NEAR(r.correction_rate, 0.5, 1e-12);     /* one of the two that made an attempt */
    TT_CHECK_NEAR(r.spoil_rate, 0, 1e-12);
    TT_CHECK_NEAR(r.behaviour[TT_WORKS_FIRST], 0.5, 1e-12);
    tt_destroy(ctx);
}

TT_TEST(jsonl_sets_hold_out_what_is_asked) {
    static const char lines[] = "{\"problem\":\"a\",\"answer\":\"1\"}\n{\"question\":\"b\",\"answer\":\"2\"}\n{\"question\":\"c\",\"answer\":\"3\"}\n";
    const char *path = tt_test_tmp("held_out.jsonl");
    tt_context *ctx = tt_create(NULL);
    tt_text question = TT_INIT, answer = TT_INIT;
    tt_jsonl *data;
    tt_task task;
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, "{\"answer\":[]}\n", 14));
    TT_CHECK(tt_jsonl_load(ctx, path) == NULL && tt_error_status(ctx) == TT_ERR_FILE);
    TT_CHECK_OK(ctx, tt_file_write(ctx, path, lines, sizeof lines - 1));
    data = tt_jsonl_load(ctx, path);
    TT_REQUIRE(data != NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_OK);      /* a success takes the error of the failure away */
    question.ctx = answer.ctx = ctx;
    task = tt_task_jsonl(data, "{question}", "<end>");
    TT_CHECK_INT(tt_jsonl_count(data, 1), 1);
    TT_CHECK_OK(ctx, tt_jsonl_hold_out(data, 3));
    TT_CHECK_INT(tt_jsonl_count(data, 0), 0);
    TT_CHECK_OK(ctx, task.question(task.user, 1, 0, &question, &answer));
    TT_CHECK_OK(ctx, task.question(task.user, 1, 5, &question, &answer));
    TT_CHECK_STR(question.data, "ac");
    TT_CHECK_INT(task.question(task.user, 0, 0, &question, &answer), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "split 0 has no records");
    TT_CHECK_INT(tt_jsonl_hold_out(data, 4), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "n is 4, expected 0..3");
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_jsonl_destroy(data);
    tt_destroy(ctx);
}
static tt_status everything(tt_context *ctx, const tt_tokenizer *tokenizer, tt_model *model) {
    static const char *const names[1] = {"x"};
    tt_task task = quiz();
    tt_evaluate_desc d = TT_INIT;
    tt_evaluation e;
    tt_text text = TT_INIT;
    tt_status status;
    text.ctx = ctx;
    d.n_questions = 2;
    d.n_samples = 3;
    d.max_new_tokens = 2;
    status = tt_evaluate(model, tokenizer, &task, &d, &e);
    if (status == TT_OK) { status = tt_evaluation_table(&e, names, 1, &text); }
    if (status == TT_OK) { status = tt_evaluation_json(&e, &text); }
    tt_text_free(&text);
    return status;
}
TT_TEST(every_failed_allocation_is_reported_and_leaks_nothing) {
    long n;
    int failed = 1;
    for (n = 1; failed && n < 2000; n++) {
        tt_test_memory memory = tt_test_memory_none();
        tt_desc desc = TT_INIT;
        tt_context *ctx;
        tt_tokenizer *tokenizer;
        tt_model *model;
        tt_status status;
        desc.allocator = tt_test_allocator(&memory);
        desc.n_threads = 1;
        ctx = tt_create(&desc);
        tokenizer = bytes_tokenizer(ctx);
        model = tiny_model(ctx, tokenizer);
        TT_REQUIRE(model != NULL);
        memory.fail_at = memory.calls + n;
        status = everything(ctx, tokenizer, model);
        failed = status != TT_OK;
        TT_CHECK(!failed || status == TT_ERR_MEM);
        tt_model_destroy(model);
        tt_tokenizer_destroy(tokenizer);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
    TT_CHECK(n > 30 && n < 2000);
}

TT_MAIN(answers_are_equal_by_text_value_or_parts, answers_of_math500_equal_those_of_their_solutions, rewards_read_the_answer_where_it_stands,
        signs_belong_to_their_numbers, fractions_and_mixed_numbers_are_read, numbers_are_compared_to_their_last_digit, thousands_are_read_however_they_are_parted,
        units_count_only_against_others, headings_hide_no_answer, boxes_are_seen_in_every_spelling, answers_need_not_be_numbers,
        answers_are_found_in_every_surrounding, what_is_in_doubt_is_not_right, last_numbers_and_exact_texts_are_compared, reward_cases_of_public_reports,
        numeric_golds_keep_their_digits, answers_written_in_other_ways_are_one_vote, no_response_is_too_strange_to_be_graded,
        formats_are_patterns, trl_wants_thoughts_in_their_tags, trl_compares_boxed_answers, trl_scales_by_length_and_repetition, countdown_wants_each_number_once, countdown_test_set_is_solved_and_checked, puzzles_are_answered_and_split_by_their_numbers,
        puzzle_documents_show_right_checks_of_unseen_questions, puzzle_tokenizers_survive_lost_memory, puzzle_settings_are_checked, intervals_are_those_of_the_textbook, pass_at_k_counts_the_samples_that_miss, evaluation_counts_passes_and_votes,
        a_failing_reward_is_counted_not_fatal, evaluations_are_a_table_and_json, reflection_is_read_from_words_without_a_judge, what_was_not_attempted_is_not_corrected,
        jsonl_sets_hold_out_what_is_asked, every_failed_allocation_is_reported_and_leaks_nothing)
