/* The trainer, the tasks of examples/tasks.h and the evaluation of examples/evaluate.h. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "../examples/losses.h"
#include "../examples/tasks.h"
#include "../examples/evaluate.h"
#include "tt_test.h"

/* ---- signs: an independent reader of its texts ---- */
typedef struct reader { const char *at; int bad; } reader;

/* The next token: "<tag>", "\n\n", or a word that stands after exactly one space. */
static void next_token(reader *r, char *out) {
    size_t n;
    out[0] = 0;
    if (r->at[0] == '<') { n = strcspn(r->at, ">") + 1; }
    else if (strncmp(r->at, "\n\n", 2) == 0) { n = 2; }
    else {
        if (r->at[0] != ' ' || strchr(" \n<", r->at[1])) { r->bad = 1; return; }
        r->at++;
        n = strcspn(r->at, " \n<");
    }
    if (n > 30) { r->bad = 1; return; }
    memcpy(out, r->at, n);
    out[n] = 0;
    r->at += n;
}
static void expect(reader *r, const char *words) {
    char want[32], got[32];
    while (*words && !r->bad) {
        size_t n = strcspn(words, " ");
        memcpy(want, words, n);
        want[n] = 0;
        words += n + (words[n] == ' ');
        next_token(r, got);
        if (strcmp(want, got) != 0) { r->bad = 1; }
    }
}
static int number(reader *r) {
    char token[32], *end;
    long value;
    next_token(r, token);
    value = strtol(token, &end, 10);
    if (*end || end == token) { r->bad = 1; }
    return (int)value;
}
typedef struct puzzle { int n, target, digits[8], signs[8]; } puzzle;
static void read_question(reader *r, puzzle *p) {
    expect(r, "make");
    p->target = number(r);
    expect(r, "from");
    for (p->n = 0; p->n < 8 && r->at[0] == ' '; p->n++) {
        p->digits[p->n] = number(r);
        if (p->digits[p->n] < 1 || p->digits[p->n] > 9) { r->bad = 1; }
    }
}
/* A signed digit that belongs to the question; its sign goes to p->signs. */
static void read_signed(reader *r, puzzle *p, int i) {
    char token[32];
    next_token(r, token);
    if (strlen(token) != 2 || (token[0] != '+' && token[0] != '-') || token[1] - '0' != p->digits[i]) { r->bad = 1; return; }
    p->signs[i] = token[0] == '-' ? -1 : 1;
}
static int read_attempt(reader *r, puzzle *p) {
    int i, sum = 0;
    expect(r, "answer");
    for (i = 0; i < p->n && !r->bad; i++) { read_signed(r, p, i); sum += p->signs[i] * p->digits[i]; }
    return sum;
}
/* Runs along a check whose signs must be those of p; returns its sum. */
static int read_check(reader *r, const puzzle *p) {
    puzzle said = *p;
    char token[32], want[32];
    int i, sum = 0;
    for (i = 0; i < p->n && !r->bad; i++) {
        read_signed(r, &said, i);
        if (said.signs[i] != p->signs[i]) { r->bad = 1; }
        sum += p->signs[i] * p->digits[i];
        snprintf(want, sizeof want, "=%d", sum);
        next_token(r, token);
        if (strcmp(want, token) != 0) { r->bad = 1; }
    }
    expect(r, "need");
    if (number(r) != p->target) { r->bad = 1; }
    expect(r, ".");
    return sum;
}
/* Which digit changed its sign is not said by its place: try each that fits, the check tells. */
static int read_flip(reader *r, puzzle *p, int sum) {
    int said = number(r), i;
    expect(r, said * 2 == abs(sum - p->target) ? (sum > p->target ? "over , flip" : "short , flip") : "!");
    said = number(r);
    expect(r, ":");
    for (i = 0; i < p->n; i++) {
        reader ahead = *r;
        puzzle flipped = *p;
        if (p->digits[i] != said) { continue; }
        flipped.signs[i] = -flipped.signs[i];
        sum = read_check(&ahead, &flipped);
        if (ahead.bad) { continue; }
        *r = ahead;
        *p = flipped;
        return sum;
    }
    r->bad = 1;
    return 0;
}
static void read_reason(reader *r, puzzle *p, int *flips) {
    int sum;
    expect(r, p->target > 9 ? "mentors would say , check :" : "wait , check :");
    sum = read_check(r, p);
    for (*flips = 0; !r->bad && sum != p->target; ++*flips) {
        expect(r, "no , twice");
        sum = read_flip(r, p, sum);
    }
    if (*flips > 7) { r->bad = 1; }
    expect(r, *flips == 0 && p->target < 0 ? "yes , but I should check first ." : "yes .");
}
typedef enum kind { STUDENT, TEACHER, NOTES, BROKEN } kind;
static kind read_document(const char *text, puzzle *p, int *attempt_sum, int *flips, size_t *answer_at) {
    reader r;
    char role[32];
    kind k;
    r.at = text;
    r.bad = 0;
    *flips = 0;
    next_token(&r, role);
    k = strcmp(role, "<user>") == 0 ? STUDENT : strcmp(role, "<mentor>") == 0 ? TEACHER : NOTES;
    if (role[0] != '<') { return BROKEN; }
    read_question(&r, p);
    expect(&r, k == STUDENT ? "<student>" : "<attempt>");
    *answer_at = (size_t)(r.at - text);
    *attempt_sum = read_attempt(&r, p);
    if (k == TEACHER) {
        expect(&r, "<feedback> <opinion>");
        expect(&r, *attempt_sum == p->target ? "correct" : "incorrect");
        expect(&r, "</opinion> <reason>");
        read_reason(&r, p, flips);
        expect(&r, "</reason> <phrase> so");
    } else if (k == NOTES) {
        expect(&r, "\n\n");
        read_reason(&r, p, flips);
        expect(&r, "\n\n so");
    }
    if (k != STUDENT) {
        puzzle final = *p;
        if (read_attempt(&r, &final) != p->target || memcmp(final.signs, p->signs, sizeof(int) * (size_t)p->n) != 0) { r.bad = 1; }
    }
    expect(&r, k == TEACHER ? "</phrase> <stop>" : "<end>");
    return r.bad || *r.at ? BROKEN : k;
}

static tt_signs *make_signs(tt_context *ctx, uint64_t seed) {
    tt_signs_desc desc = TT_INIT;
    desc.seed = seed;
    return tt_signs_create(ctx, &desc);
}

TT_TEST(signs_documents_follow_the_grammar) {
    tt_context *ctx = tt_create(NULL);
    tt_signs *signs = make_signs(ctx, 5);
    tt_text text = TT_INIT;
    int counts[2][4] = {{0}}, right = 0, four = 0, many = 0, i, late;
    text.ctx = ctx;
    TT_REQUIRE(signs != NULL);
    for (late = 0; late < 2; late++) {
        for (i = 0; i < 4000; i++) {
            puzzle p;
            int sum, flips;
            size_t from = 0, answer_at;
            kind k;
            text.size = 0;
            TT_REQUIRE(tt_signs_document(signs, (uint64_t)i, late ? 0.93 : 0.92, &text, &from) == TT_OK);
            k = read_document(text.data, &p, &sum, &flips, &answer_at);
            if (k == BROKEN) { printf("  %s\n", text.data); }
            TT_REQUIRE(k != BROKEN);
            TT_CHECK_INT(from, answer_at);
            counts[late][k]++;
            right += sum == p.target;
            four += p.n == 4;
            many += flips > 1;
        }
    }
    TT_CHECK_NEAR(counts[0][STUDENT] / 4000.0, 0.45, 0.03);
    TT_CHECK_NEAR(counts[0][TEACHER] / 4000.0, 0.35, 0.03);
    TT_CHECK_INT(counts[1][STUDENT], 4000);
    TT_CHECK_NEAR(four / 8000.0, 0.6, 0.03);
    TT_CHECK(right > 2400 && right < 3600);      /* 0.3 by design and some by luck */
    TT_CHECK(many > 100);
    tt_text_free(&text);
    tt_signs_destroy(signs);
    tt_destroy(ctx);
}

/* The digits of a question in order of size, as one number. */
static long multiset(const puzzle *p) {
    int d, i;
    long key = 0;
    for (d = 1; d <= 9; d++) { for (i = 0; i < p->n; i++) { if (p->digits[i] == d) { key = key * 10 + d; } } }
    return key;
}
TT_TEST(signs_splits_are_disjoint) {
    tt_context *ctx = tt_create(NULL);
    tt_signs *signs = make_signs(ctx, 1);
    tt_task task = tt_task_signs(signs);
    static char seen[2][10000];
    tt_text question = TT_INIT, answer = TT_INIT;
    int split, i, train = 0, held_out = 0, both = 0;
    question.ctx = answer.ctx = ctx;
    memset(seen, 0, sizeof seen);
    for (split = 0; split < 2; split++) {
        for (i = 0; i < 6000; i++) {
            puzzle p;
            reader r;
            question.size = answer.size = 0;
            TT_REQUIRE(task.question(task.user, split, (uint64_t)i, &question, &answer) == TT_OK);
            r.at = question.data;
            r.bad = 0;
            read_question(&r, &p);
            r.at = answer.data;
            TT_CHECK_INT(read_attempt(&r, &p), p.target);
            TT_REQUIRE(!r.bad);
            seen[split][multiset(&p)] = 1;
        }
    }
    for (i = 0; i < 10000; i++) {
        train += seen[0][i];
        held_out += seen[1][i];
        both += seen[0][i] && seen[1][i];
    }
    TT_CHECK_INT(both, 0);
    TT_CHECK(held_out > 50 && held_out < 120 && train > 500);      /* an eighth of 165 + 495 */
    question.size = 0;
    task.question(task.user, 0, 77, &question, &answer);
    train = (int)question.size;
    task.question(task.user, 0, 77, &question, &answer);
    TT_CHECK_INT(question.size, 2 * train);
    TT_CHECK_BYTES(question.data, question.data + train, (size_t)train);
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_signs_destroy(signs);
    tt_destroy(ctx);
}

TT_TEST(signs_judges_responses) {
    static const struct {
        const char *response;
        int stopped, final_right, attempted, first_right, reflects;
        tt_behaviour behaviour;
    } cases[] = {
        {" answer +3 +7 -2 +9", 1, 1, 1, 1, 0, TT_NO_REFLECTION},
        {" answer +3 +7 -2 +9", 0, 0, 1, 1, 0, TT_NO_REFLECTION},                 /* no end token         */
        {" answer +3 +7 +2 +9", 1, 0, 1, 0, 0, TT_NO_REFLECTION},                 /* another sum          */
        {" answer +3 -2 +7 +9", 1, 0, 1, 0, 0, TT_NO_REFLECTION},                 /* another order        */
        {" answer +3 +7 -2", 1, 0, 1, 0, 0, TT_NO_REFLECTION},                    /* a digit is missing   */
        {" answer +3 +7 -2 +9 +1", 1, 0, 1, 0, 0, TT_NO_REFLECTION},              /* one too many         */
        {" answer 3 +7 -2 +9", 1, 0, 1, 0, 0, TT_NO_REFLECTION},                  /* no sign              */
        {" answer +3 +7 -2 +9<stop>", 1, 0, 1, 0, 0, TT_NO_REFLECTION},           /* glued to a tag       */
        {"", 1, 0, 0, 0, 0, TT_NO_REFLECTION},
        {" check : +3 +7 -2 +9 . yes .\n\n so answer +3 +7 -2 +9", 1, 1, 0, 0, 1, TT_SELF_AGREEMENT},
        {"\n\n answer +3 +7 -2 +9", 1, 1, 0, 0, 1, TT_NO_REFLECTION},
        {" answer +3 +7 +2 +9\n\n wait , check : +3 =3 +7 =10 +2 =12 +9 =21 need 17 . no , twice 2 over , flip 2 : +3 =3 +7 =10 -2 =8 +9 =17"
         " need 17 . yes .\n\n so answer +3 +7 -2 +9", 1, 1, 1, 0, 1, TT_SELF_CONFLICT},
        {" answer +3 +7 -2 +9\n\n wait , check : need 17 . yes .\n\n so answer +3 +7 +2 +9", 1, 0, 1, 1, 1, TT_SELF_AGREEMENT},
        {" answer +3 +7 -2 +9\n\n wait , check : need 17 . yes , but I should check first .\n\n so answer +3 +7 -2 +9", 1, 1, 1, 1, 1, TT_SELF_CRITIQUE},
        {" answer +3 +7 -2 +9\n\n mentors would say , check : need 17 . no , twice 1", 0, 0, 1, 1, 1, TT_SELF_CONSULTATION},
        {" answer +3 +7 -2 +9 check", 1, 1, 1, 1, 1, TT_NO_REFLECTION}             /* reflects, no verdict */
    };
    tt_context *ctx = tt_create(NULL);
    tt_signs *signs = make_signs(ctx, 1);
    tt_task task = tt_task_signs(signs);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        tt_reward_input in = TT_INIT;
        tt_outcome out;
        float reward = -1;
        int good;
        in.question = " make 17 from 3 7 2 9";
        in.answer = "";
        in.response = cases[i].response;
        in.response_size = strlen(in.response);
        in.stopped = cases[i].stopped;
        TT_CHECK_OK(ctx, task.judge(task.user, &in, &out));
        TT_CHECK_OK(ctx, task.reward(task.user, &in, &reward));
        TT_CHECK(reward == (float)cases[i].final_right);
        good = TT_CHECK_INT(out.final_right, cases[i].final_right);
        good += TT_CHECK_INT(out.first_right, cases[i].first_right);
        good += TT_CHECK_INT(out.attempted, cases[i].attempted);
        good += TT_CHECK_INT(out.reflects, cases[i].reflects);
        good += TT_CHECK_INT(out.behaviour, cases[i].behaviour);
        if (good < 5) { printf("  case %d: %s\n", (int)i, in.response); }
    }
    {
        tt_reward_input in = TT_INIT;
        float reward;
        in.question = " make 17 of 3";
        in.response = " answer +3";
        TT_CHECK_INT(task.reward(task.user, &in, &reward), TT_ERR_ARG);
        TT_CHECK_CONTAINS(tt_error(ctx), "make 17 of 3");
    }
    tt_signs_destroy(signs);
    {
        tt_signs_desc desc = TT_INIT;
        desc.min_n = 5;
        desc.max_n = 9;
        TT_CHECK(tt_signs_create(ctx, &desc) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "max_n 9");
    }
    tt_destroy(ctx);
}

TT_TEST(signs_words_are_single_tokens) {
    tt_context *ctx = tt_create(NULL);
    tt_signs *signs = make_signs(ctx, 3);
    tt_tokenizer *tokenizer = tt_signs_tokenizer(signs);
    tt_text text = TT_INIT;
    tt_ids ids = TT_INIT;
    int i;
    text.ctx = ids.ctx = ctx;
    TT_REQUIRE(tokenizer != NULL);
    for (i = 0; i < 300; i++) {
        reader r;
        char token[32];
        size_t n = 0;
        text.size = ids.size = 0;
        tt_signs_document(signs, (uint64_t)i + 10000, 0, &text, NULL);
        TT_REQUIRE(tt_encode(tokenizer, text.data, text.size, TT_SPECIAL_PARSE, &ids) == TT_OK);
        r.at = text.data;
        r.bad = 0;
        while (*r.at && !r.bad) { next_token(&r, token); n++; }
        TT_CHECK_INT(ids.size, n);
    }
    ids.size = 0;
    TT_CHECK_OK(ctx, tt_encode(tokenizer, "</opinion>", 10, TT_SPECIAL_TEXT, &ids));      /* a student may write anything */
    TT_CHECK(tt_token_id(tokenizer, "\n\n") >= 0 && tt_token_id(tokenizer, " =-36") >= 0 && tt_token_id(tokenizer, "<end>") == 2);
    TT_CHECK(tt_vocab_size(tokenizer) < 512);
    tt_text_free(&text);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(tokenizer);
    tt_signs_destroy(signs);
    tt_destroy(ctx);
}

/* Attempt, feedback by rule and answer together must be a document of "notes", with a right end. */
TT_TEST(signs_teacher_leads_to_a_right_answer) {
    tt_context *ctx = tt_create(NULL);
    tt_signs *signs = make_signs(ctx, 4);
    tt_task task = tt_task_signs(signs);
    tt_teacher teacher = tt_signs_teacher(signs);
    tt_text question = TT_INIT, answer = TT_INIT, document = TT_INIT;
    int i, wrong = 0, right = 0;
    question.ctx = answer.ctx = document.ctx = ctx;
    for (i = 0; i < 600; i++) {
        tt_feedback feedback = TT_INIT;
        tt_attempt attempt = TT_INIT;
        puzzle p;
        int sum, flips;
        size_t at;
        char *c;
        feedback.reason.ctx = feedback.phrase.ctx = feedback.opinion.ctx = ctx;
        question.size = answer.size = document.size = 0;
        TT_REQUIRE(task.question(task.user, i % 2, (uint64_t)i, &question, &answer) == TT_OK);
        for (c = answer.data; *c; c++) { if ((*c == '+' || *c == '-') && tt_random(1, (uint64_t)i, (uint64_t)(c - answer.data)) % 3 == 0) { *c = *c == '+' ? '-' : '+'; } }
        attempt.question = question.data;
        attempt.response = answer.data;
        TT_CHECK_OK(ctx, teacher.feedback(teacher.user, &attempt, 1, &feedback));
        TT_REQUIRE(feedback.reason.data && feedback.phrase.data);
        TT_CHECK_OK(ctx, tt_text_format(&document, "<bob>%s<attempt>%s\n\n%s\n\n%s<end>", question.data, answer.data, feedback.reason.data, feedback.phrase.data));
        if (!TT_CHECK_INT(read_document(document.data, &p, &sum, &flips, &at), NOTES)) { printf("  %s\n", document.data); }
        TT_CHECK(flips <= p.n);                             /* no slips: each flip brings it nearer */
        *(sum == p.target ? &right : &wrong) += 1;
        tt_text_free(&feedback.reason);
        tt_text_free(&feedback.phrase);
    }
    TT_CHECK(right > 50 && wrong > 200);
    {
        static const char *const odd[] = {"", " answer", " answer +3 +4", " answer +9 +9 +9", "wait"};
        for (i = 0; i < 5; i++) {
            tt_feedback feedback = TT_INIT;
            tt_attempt attempt = TT_INIT;
            feedback.reason.ctx = feedback.phrase.ctx = ctx;
            attempt.question = " make 6 from 1 2 3";
            attempt.response = odd[i];
            TT_CHECK_OK(ctx, teacher.feedback(teacher.user, &attempt, 1, &feedback));
            TT_CHECK(feedback.reason.size == 0 && feedback.phrase.size == 0);
        }
    }
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_text_free(&document);
    tt_signs_destroy(signs);
    tt_destroy(ctx);
}

/* ---- JSON lines ---- */
static tt_jsonl *load_lines(tt_context *ctx, const char *lines) {
    const char *path = tt_test_tmp("records.jsonl");
    if (tt_file_write(ctx, path, lines, strlen(lines)) != TT_OK) { return NULL; }
    return tt_jsonl_load(ctx, path);
}
TT_TEST(jsonl_rewards_answers) {
    static const struct { const char *gold, *response; int right; } cases[] = {
        {"72", "The answer is 72.", 1}, {"72", "The answer is 72.0", 1}, {"72", "it is 7", 0}, {"72", "72 or 71", 0},
        {"1,234", "so $1234.00 in all", 1}, {"1234", "#### 1,234", 1}, {"-5", "so x = -5", 1}, {"5", "10-5", 1}, {"5", "", 0},
        {"3.5", "3.50", 1}, {"3.5", "3.55", 0}, {"100", "1.00", 0}, {"42", "first \\boxed{41} then \\boxed{42}, of 7", 1},
        {"42", "\\boxed{x = 42} 7", 1}, {"\\frac{1}{2}", "it is \\boxed{\\frac{1}{2}}", 1}, {"12", "12 #### 13", 0}, {"blue", "#### blue", 1}
    };
    tt_context *ctx = tt_create(NULL);
    tt_jsonl *data = load_lines(ctx, "{\"question\":\"a\",\"answer\":\"because #### 12\"}\n\n{\"question\":\"b\",\"answer\":3.5}\n{\"question\":\"c\",\"answer\":\"yes\"}");
    tt_task task;
    tt_text question = TT_INIT, answer = TT_INIT;
    tt_reward_input in = TT_INIT;
    float reward = 0;
    size_t i;
    TT_REQUIRE(data != NULL);
    question.ctx = answer.ctx = ctx;
    task = tt_task_jsonl(data, "{question}", "<end>");
    TT_CHECK_INT(tt_jsonl_count(data, 0), 2);
    TT_CHECK_INT(tt_jsonl_count(data, 1), 1);
    TT_CHECK_OK(ctx, task.question(task.user, 0, 2, &question, &answer));
    TT_CHECK_OK(ctx, task.question(task.user, 0, 1, &question, &answer));
    TT_CHECK_OK(ctx, task.question(task.user, 1, UINT64_MAX, &question, &answer));
    TT_CHECK_STR(question.data, "abc");
    TT_CHECK_STR(answer.data, " 123.5yes");
    in.stopped = 1;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        in.question = "";
        in.answer = cases[i].gold;
        in.response = cases[i].response;
        in.response_size = strlen(in.response);
        TT_CHECK_OK(ctx, task.reward(task.user, &in, &reward));
        if (reward != (float)cases[i].right) { printf("  gold %s, response %s\n", in.answer, in.response); }
        TT_CHECK_INT(reward, cases[i].right);
    }
    in.stopped = 0;
    in.answer = in.response = "72";
    in.response_size = 2;
    TT_CHECK_OK(ctx, task.reward(task.user, &in, &reward));
    TT_CHECK_INT(reward, 0);
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_jsonl_destroy(data);
    tt_destroy(ctx);
}
/* As editors and spreadsheets leave it: a byte order mark, lines of blanks, Windows' line ends. */
TT_TEST(jsonl_with_a_byte_order_mark_and_lines_of_blanks) {
    tt_context *ctx = tt_create(NULL);
    tt_jsonl *data = load_lines(ctx, "\xef\xbb\xbf{\"question\":\"a\",\"answer\":1}\r\n   \t\r\n\r\n{\"question\":\"b\",\"answer\":123456789012345678901.50}\n \n");
    tt_text question = TT_INIT, answer = TT_INIT;
    tt_task task;
    TT_REQUIRE(data != NULL);
    question.ctx = answer.ctx = ctx;
    task = tt_task_jsonl(data, "{question}", "<end>");
    TT_CHECK_OK(ctx, task.question(task.user, 0, 0, &question, &answer));
    TT_CHECK_OK(ctx, task.question(task.user, 1, 0, &question, &answer));
    TT_CHECK_STR(question.data, "ab");
    TT_CHECK_STR(answer.data, "1123456789012345678901.50");            /* a number keeps its digits */
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_jsonl_destroy(data);
    tt_destroy(ctx);
}
TT_TEST(jsonl_text_with_a_nul_is_refused_by_name) {
    static const char *const fields[] = {"question", "answer"};
    tt_context *ctx = tt_create(NULL);
    char lines[200];
    int i;
    for (i = 0; i < 2; i++) {
        snprintf(lines, sizeof lines, "{\"question\":\"a\",\"answer\":\"1\"}\n{\"question\":\"b%s\",\"answer\":\"2%s\"}\n", i == 0 ? "\\u0000c" : "", i == 1 ? "\\u0000" : "");
        TT_CHECK(load_lines(ctx, lines) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), "records.jsonl line 2");
        TT_CHECK_CONTAINS(tt_error(ctx), fields[i]);
        TT_CHECK_CONTAINS(tt_error(ctx), "U+0000");
    }
    tt_destroy(ctx);
}
TT_TEST(jsonl_errors_name_the_line) {
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_CHECK(load_lines(ctx, "{\"question\":\"a\",\"answer\":\"1\"}\n\n{\"question\":\"a\",}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "records.jsonl line 3");
    TT_CHECK(load_lines(ctx, "{\"question\":\"a\",\"answer\":\"1\"}\n{\"answer\":\"1\"}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "line 2");
    TT_CHECK_CONTAINS(tt_error(ctx), "question");
    TT_CHECK(load_lines(ctx, "{\"question\":\"a\",\"answer\":[]}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "answer");
    TT_CHECK(load_lines(ctx, "[1]\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "line 1: it is a list, expected an object");
    TT_CHECK(load_lines(ctx, "{\"question\":5,\"answer\":\"1\"}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "\"question\" is a number, expected a text");
    TT_CHECK(load_lines(ctx, "{\"problem\":\"a\",\"answer\":true}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "\"answer\" is true or false, expected a text or a number");
    TT_CHECK(load_lines(ctx, "{\"question\":\"a\"}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "it has no text \"answer\"");
    TT_CHECK(load_lines(ctx, "{\"question\":\"a\",\"answer\":1}\n{\"question\":\"\xc3\",\"answer\":1}\n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "line 2 column 14: the byte 0xC3 is no UTF-8");
    TT_CHECK(load_lines(ctx, "\n \n") == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "0 records");
    TT_CHECK(tt_jsonl_load(ctx, "build/tmp/no such file") == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "no such file");
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- trainer: a task that a tiny model learns in seconds: repeat the letter ---- */
static const char *const echo_specials[] = {"<q>", "<a>", "<end>"};
typedef struct echo { tt_context *ctx; float bad_reward; int questions; const float *rewards; } echo;

static tt_status echo_question(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    echo *e = (echo *)user;
    char letter = (char)('a' + index % 4);
    e->questions++;
    (void)split;
    return tt_text_format(question, " %c", letter) == TT_OK ? tt_text_format(answer, " %c", letter) : TT_ERR_MEM;
}
static tt_status echo_reward(void *user, const tt_reward_input *in, float *reward) {
    echo *e = (echo *)user;
    *reward = in->stopped && strcmp(in->answer, in->response) == 0 ? 1.0f : in->stopped ? 0.25f : 0.0f;
    if (e->bad_reward != 0) { *reward = e->bad_reward; }
    return TT_OK;
}
static tt_status echo_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    int i;
    (void)user;
    for (i = 0; i < n; i++) {
        size_t skip = attempts[i].question_size ? attempts[i].question_size - 1 : 0;
        if (tt_text_append(&out[i].reason, " d", 2) != TT_OK || tt_text_append(&out[i].phrase, attempts[i].question + skip, 1) != TT_OK) { return TT_ERR_MEM; }
    }
    return TT_OK;
}
/* Everything that one run needs. */
typedef struct rig {
    tt_context *ctx;
    echo e;
    tt_tokenizer *tokenizer;
    tt_model *model;
    tt_task task;
    tt_teacher teacher;
    tt_trainer_desc desc;
    tt_trainer *trainer;
    tt_covariance covariance;
} rig;
static void rig_open(rig *r, int n_threads, tt_test_memory *memory) {
    static const char *const words[] = {" a", " b", " c", " d", "\n\n", " a"};      /* what is twice there is merged first */
    tt_desc context = TT_INIT;
    tt_tokenizer_desc special = TT_INIT;
    tt_model_config config = TT_INIT;
    memset(r, 0, sizeof *r);
    context.n_threads = n_threads;
    if (memory) { context.allocator = tt_test_allocator(memory); }
    r->ctx = r->e.ctx = tt_create(&context);
    if (!r->ctx) { return; }
    special.special_tokens = echo_specials;
    special.n_special_tokens = 3;
    r->tokenizer = tt_tokenizer_words(r->ctx, &special, words, 6);
    config.vocab_size = r->tokenizer ? tt_vocab_size(r->tokenizer) : 1;
    config.hidden_size = 32;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    config.intermediate_size = 32;
    config.max_position_embeddings = 16;
    config.bos_token_id = config.eos_token_id = -1;
    r->model = tt_model_create(r->ctx, &config, 1);
    r->task.name = "echo";
    r->task.question = echo_question;
    r->task.reward = echo_reward;
    r->task.prompt_template = "<q>{question}<a>";
    r->task.end_token = "<end>";
    r->task.user = &r->e;
    r->teacher.feedback = echo_feedback;
    r->desc.model = r->model;
    r->desc.tokenizer = r->tokenizer;
    r->desc.task = &r->task;
    r->desc.grpo.num_generations = 8;
    r->desc.grpo.max_completion_length = 6;
    r->desc.adamw.max_grad_norm = 1;
    r->desc.schedule.lr = 0.004f;      /* at 0.01 it settles on one letter for all questions */
    r->desc.prompts_per_step = 4;
    r->desc.seed = 9;
}
static void rig_start(rig *r) { r->trainer = tt_trainer_create(r->ctx, &r->desc); }
static void rig_close(rig *r) {
    tt_covariance_free(&r->covariance);
    tt_trainer_destroy(r->trainer);
    tt_model_destroy(r->model);
    tt_tokenizer_destroy(r->tokenizer);
    tt_destroy(r->ctx);
}
static int same_weights(const tt_model *a, const tt_model *b) {
    int i, same = tt_model_n_params(a) == tt_model_n_params(b);
    for (i = 0; same && i < tt_model_n_params(a); i++) {
        const tt_tensor *p = tt_model_param(a, i), *q = tt_model_param(b, i);
        same = tt_test_same(p, q);
    }
    return same;
}
/* n steps; the metrics of the last, as JSON without timings, go to out. */
static tt_status rig_run(rig *r, int n, char *out, size_t capacity) {
    tt_step_metrics m;
    tt_text json = TT_INIT;
    tt_status status = TT_OK;
    memset(&m, 0, sizeof m);
    json.ctx = r->ctx;
    while (n-- > 0 && status == TT_OK) { status = tt_trainer_step(r->trainer, &m); }
    m.step_s = 0;
    if (status == TT_OK) { status = tt_metrics_json(&m, &json); }
    if (out) { snprintf(out, capacity, "%s", json.data ? json.data : ""); }
    tt_text_free(&json);
    return status;
}

enum { LEARN_STEPS = 160 };
TT_TEST(trainer_learns) {
    rig r;
    tt_step_metrics m;
    tt_evaluation before, after;
    tt_evaluate_desc d = TT_INIT;
    double first = 0, last = 0;
    int i;
    if (tt_test_emulated()) { TT_SKIP("a hundred steps"); }
    rig_open(&r, 1, NULL);
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    d.n_questions = 64;
    d.max_new_tokens = 6;
    TT_CHECK_OK(r.ctx, tt_evaluate(r.model, r.tokenizer, &r.task, &d, &before));
    for (i = 0; i < LEARN_STEPS; i++) {
        if (!TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m))) { break; }
        TT_CHECK_INT(m.step, i);
        if (i < 10) { first += m.grpo.reward / 10; }
        if (i >= LEARN_STEPS - 10) { last += m.grpo.reward / 10; }
    }
    TT_CHECK_OK(r.ctx, tt_evaluate(r.model, r.tokenizer, &r.task, &d, &after));
    printf("  reward %.3f -> %.3f, accuracy %.3f -> %.3f\n", first, last, before.accuracy, after.accuracy);
    TT_CHECK(last > first + 0.4);
    TT_CHECK(after.accuracy > before.accuracy + 0.3);
    TT_CHECK_INT(tt_trainer_step_count(r.trainer), LEARN_STEPS);
    TT_CHECK_INT(tt_trainer_rollouts(r.trainer)->n, 32);
    TT_CHECK(m.num_tokens > LEARN_STEPS * 32 && m.step_s > 0);
    rig_close(&r);
}
TT_TEST(trainer_resumes_bit_for_bit) {
    const char *path = tt_test_tmp("trainer.state");
    char whole[4000], parts[4000];
    rig a, b, c;
    rig_open(&a, 1, NULL);
    rig_open(&b, 1, NULL);
    rig_open(&c, 1, NULL);
    a.desc.teacher = &a.teacher;
    a.desc.think.total_steps = 6;
    b.desc.teacher = &b.teacher;
    b.desc.think = a.desc.think;
    c.desc.teacher = &c.teacher;
    c.desc.think = a.desc.think;
    rig_start(&a);
    rig_start(&b);
    rig_start(&c);
    TT_REQUIRE(a.trainer && b.trainer && c.trainer);
    TT_CHECK_OK(a.ctx, rig_run(&a, 6, whole, sizeof whole));
    TT_CHECK_OK(b.ctx, rig_run(&b, 3, NULL, 0));
    TT_CHECK_OK(b.ctx, tt_trainer_save(b.trainer, path));
    TT_CHECK(!same_weights(b.model, c.model));
    TT_CHECK_OK(c.ctx, tt_trainer_load(c.trainer, path));
    TT_CHECK_INT(tt_trainer_step_count(c.trainer), 3);
    TT_CHECK(same_weights(b.model, c.model));
    TT_CHECK_OK(c.ctx, rig_run(&c, 3, parts, sizeof parts));
    TT_CHECK_STR(parts, whole);
    TT_CHECK(same_weights(a.model, c.model));
    tt_trainer_destroy(c.trainer);
    c.desc.seed++;
    rig_start(&c);
    TT_CHECK_INT(tt_trainer_load(c.trainer, path), TT_ERR_FILE);
    TT_CHECK_CONTAINS(tt_error(c.ctx), "seed");
    rig_close(&a);
    rig_close(&b);
    rig_close(&c);
}
/* Equal rewards leave no gradient, but the moments and the decay go on, in a run that goes through and in one that begins
 * again at that place, where no parameter has had a gradient yet. */
TT_TEST(trainer_resumes_without_a_signal) {
    const char *path = tt_test_tmp("silent.state");
    tt_step_metrics m;
    rig a, b, c;
    rig *all[3];
    int i;
    all[0] = &a; all[1] = &b; all[2] = &c;
    for (i = 0; i < 3; i++) {
        rig_open(all[i], 1, NULL);
        all[i]->desc.adamw.weight_decay = 0.1f;
        rig_start(all[i]);
    }
    TT_REQUIRE(a.trainer && b.trainer && c.trainer);
    TT_CHECK_OK(a.ctx, rig_run(&a, 2, NULL, 0));
    TT_CHECK_OK(b.ctx, rig_run(&b, 2, NULL, 0));
    TT_CHECK_OK(b.ctx, tt_trainer_save(b.trainer, path));
    TT_CHECK_OK(c.ctx, tt_trainer_load(c.trainer, path));
    a.e.bad_reward = c.e.bad_reward = 0.5f;
    TT_CHECK_OK(a.ctx, tt_trainer_step(a.trainer, &m));
    TT_CHECK_NEAR(m.grad_norm, 0, 0);
    TT_CHECK(m.grpo.entropy > 0 && m.grpo.n_tokens > 0);            /* the forward pass still measures */
    TT_CHECK_OK(c.ctx, tt_trainer_step(c.trainer, &m));
    TT_CHECK(!same_weights(a.model, b.model));
    TT_CHECK(same_weights(a.model, c.model));
    for (i = 0; i < 3; i++) { rig_close(all[i]); }
}
TT_TEST(trainer_threads_do_not_matter) {
    char one[4000], two[4000];
    rig a, b;
    rig_open(&a, 1, NULL);
    rig_open(&b, 2, NULL);
    a.desc.max_batch = 5;                      /* nor does the number of sampler slots */
    rig_start(&a);
    rig_start(&b);
    TT_REQUIRE(a.trainer && b.trainer);
    TT_CHECK_OK(a.ctx, rig_run(&a, 3, one, sizeof one));
    TT_CHECK_OK(b.ctx, rig_run(&b, 3, two, sizeof two));
    TT_CHECK_STR(one, two);
    TT_CHECK(same_weights(a.model, b.model));
    rig_close(&a);
    rig_close(&b);
}
/* One step, with the prompts of a group and what all begin with computed once or not, in micro-batches of so many
 * tokens or in one: the same weights but for roundings. */
static void adds_up(int micro_batch_tokens, int share_prompts) {
    rig a, b;
    int i;
    size_t k;
    rig_open(&a, 1, NULL);
    rig_open(&b, 1, NULL);
    a.desc.adamw.eps = b.desc.adamw.eps = 1;   /* an update proportional to the gradient, not to its sign */
    b.desc.grpo.micro_batch_tokens = micro_batch_tokens;
    b.desc.grpo.share_prompts = share_prompts;
    rig_start(&a);
    rig_start(&b);
    TT_REQUIRE(a.trainer && b.trainer);
    TT_CHECK_OK(a.ctx, rig_run(&a, 1, NULL, 0));
    TT_CHECK_OK(b.ctx, rig_run(&b, 1, NULL, 0));
    for (i = 0; i < tt_model_n_params(a.model); i++) {
        const tt_tensor *p = tt_model_param(a.model, i), *q = tt_model_param(b.model, i);
        for (k = 0; k < p->size; k++) { if (!TT_CHECK_NEAR(TT_F(p)[k], TT_F(q)[k], 1e-6)) { break; } }
    }
    rig_close(&a);
    rig_close(&b);
}

TT_TEST(trainer_micro_batches_add_up) { adds_up(20, 0); }
TT_TEST(trainer_shares_prompts) {
    if (TT_TEST_DEVICE) { TT_SKIP("trees of sequences are trained on the CPU alone"); }
    adds_up(0, 1);
    adds_up(20, 1);
}

/* ---- more than one rank: threads of this program that meet in the hook ---- */
static tt_status silent_network(void *user, float *data, size_t n) {      /* the other ranks add nothing */
    (void)data;
    *(size_t *)user += n;
    return TT_OK;
}
static tt_status broken_network(void *user, float *data, size_t n) {
    (void)data;
    (void)n;
    return tt_fail((tt_context *)user, TT_ERR_DEVICE, "link is down");
}
TT_TEST(reducer_adds_parts_as_a_tree) {
    static const float values[8] = {1e8f, 3, -1e8f, 5, 7, 1e-3f, 1e8f, -1e8f};
    float expected = ((values[0] + values[1]) + (values[2] + values[3])) + ((values[4] + values[5]) + (values[6] + values[7]));
    size_t sent = 0;
    tt_reducer_desc d = TT_INIT;
    tt_reducer *r;
    rig a;
    int i, k;
    rig_open(&a, 1, NULL);
    d.model = a.model;
    d.n_parts = 8;
    d.allreduce = silent_network;
    d.user = &sent;
    r = tt_reducer_create(a.ctx, &d);
    TT_REQUIRE(r != NULL);
    TT_CHECK_INT(tt_reducer_desc_get(r)->world_size, 1);
    for (k = 0; k < 2; k++) {              /* the second sum knows nothing of the first */
        tt_model_zero_grad(a.model);
        for (i = 0; i < 8; i++) {
            float *grad = tt_grad(tt_model_param(a.model, 2));
            if (i > 0) { TT_CHECK_NEAR(tt_test_read(a.ctx, grad + 1), 0, 0); }
            tt_test_write(a.ctx, grad + 1, values[i]);
            TT_CHECK_OK(a.ctx, tt_reducer_add(r));
        }
        TT_CHECK_INT(tt_reducer_add(r), TT_ERR_ARG);
        TT_CHECK_CONTAINS(tt_error(a.ctx), "part 9");
        TT_CHECK_INT(tt_reducer_sum(r), TT_ERR_ARG);
        tt_model_zero_grad(a.model);
        for (i = 0; i < 8; i++) {
            tt_test_write(a.ctx, tt_grad(tt_model_param(a.model, 2)) + 1, values[i]);
            TT_CHECK_OK(a.ctx, tt_reducer_add(r));
        }
        TT_CHECK_OK(a.ctx, tt_reducer_sum(r));
        TT_CHECK_NEAR(tt_test_read(a.ctx, tt_model_param(a.model, 2)->grad + 1), expected, 0);
    }
    TT_CHECK_INT(sent, 2 * tt_model_size(a.model));
    tt_reducer_destroy(r);
    rig_close(&a);
}
TT_TEST(reducer_gathers_exactly) {
    static const double values[] = {1.0 / 3, -0.1, 1e30, 123456789012345.0, 0, HUGE_VAL, -HUGE_VAL, 9007199254740991.0};
    double mine[9], all[18];
    size_t sent = 0;
    tt_reducer_desc d = TT_INIT;
    tt_reducer *r;
    rig a;
    rig_open(&a, 1, NULL);
    memcpy(mine, values, sizeof values);
    mine[8] = (double)NAN;
    d.model = a.model;
    d.world_size = 2;
    d.rank = 1;
    d.allreduce = silent_network;
    d.user = &sent;
    r = tt_reducer_create(a.ctx, &d);
    TT_REQUIRE(r != NULL);
    TT_CHECK_OK(a.ctx, tt_reducer_gather(r, mine, 9, all));
    TT_CHECK_BYTES(all + 9, values, sizeof values);
    TT_CHECK(isnan(all[17]) && all[0] == 0 && all[8] == 0);
    tt_reducer_destroy(r);
    rig_close(&a);
}
TT_TEST(trainer_names_wrong_ranks) {
    static const struct { int rank, world_size, parts, mini_batches; const char *part; } bad[] = {
        {2, 2, 0, 1, "rank is 2"}, {-1, 2, 0, 1, "rank is -1"}, {0, -2, 0, 1, "world_size is -2"}, {0, 3, 0, 1, "multiple of world_size 3"},
        {0, 2, 1, 1, "n_parts is 1"}, {0, 2, 3, 1, "gradient_parts is 3"}, {0, 2, 16, 1, "gradient_parts is 16"}, {0, 2, 0, 4, "num_mini_batches is 4"}, {0, 1, -1, 1, "gradient_parts is -1"}
    };
    size_t i, sent = 0;
    rig r;
    rig_open(&r, 1, NULL);
    r.desc.allreduce = silent_network;
    r.desc.allreduce_user = &sent;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        r.desc.rank = bad[i].rank;
        r.desc.world_size = bad[i].world_size;
        r.desc.gradient_parts = bad[i].parts;
        r.desc.grpo.num_mini_batches = bad[i].mini_batches;
        rig_start(&r);
        TT_CHECK(r.trainer == NULL);
        TT_CHECK_CONTAINS(tt_error(r.ctx), bad[i].part);
    }
    r.desc.world_size = r.desc.gradient_parts = r.desc.rank = 0;
    r.desc.grpo.num_mini_batches = 1;
    r.desc.allreduce = broken_network;
    r.desc.allreduce_user = r.ctx;
    rig_start(&r);
    TT_CHECK_INT(tt_trainer_step(r.trainer, NULL), TT_ERR_DEVICE);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "link is down");
    rig_close(&r);
}
TT_TEST(ranks_survive_lost_memory) {
    long n, calls = 0, step = 1;
    for (n = 0; n < 100000; n += step) {
        tt_test_memory memory = tt_test_memory_none();
        tt_status status = TT_ERR_MEM;
        size_t sent = 0;
        rig r;
        rig_open(&r, 1, &memory);
        TT_REQUIRE(r.ctx && r.model && r.tokenizer);
        r.desc.grpo.beta = 0.1f;
        r.desc.grpo.kl_in_reward = 1;
        r.desc.grpo.aggregation = TT_BNPO;
        r.desc.grpo.num_generations = 2;
        r.desc.world_size = 2;
        r.desc.gradient_parts = 4;
        r.desc.allreduce = silent_network;
        r.desc.allreduce_user = &sent;
        memory.fail_at = n ? memory.calls + n : 0;
        calls = memory.calls;
        rig_start(&r);
        if (r.trainer) { status = tt_trainer_step(r.trainer, NULL); }
        calls = memory.calls - calls;
        if (n && n <= calls) { TT_CHECK_INT(status, TT_ERR_MEM); }
        if (r.trainer && n && n <= calls) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, NULL)); }      /* an error leaves a usable trainer */
        rig_close(&r);
        TT_CHECK_NO_LEAK(memory);
        if (n == 0) { step = 1 + calls / 100; n = 1 - step; }
        else if (n > calls) { break; }
    }
    TT_CHECK(calls > 50);
}

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
enum { MAX_RANKS = 4 };
typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int n_ranks, n_here, round, n_calls;
    float *data[MAX_RANKS];
    double sent;
} meeting;
enum { EXAM_QUESTIONS = 10 };
typedef struct seat { meeting *m; int rank, n_steps; rig r; char json[4000]; tt_status status; tt_evaluation exam; double accuracy[EXAM_QUESTIONS]; int n_heard; } seat;

static void meet(meeting *m) {
    int round;
    pthread_mutex_lock(&m->lock);
    round = m->round;
    if (++m->n_here == m->n_ranks) {
        m->n_here = 0;
        m->round++;
        pthread_cond_broadcast(&m->all_here);
    }
    while (m->round == round) { pthread_cond_wait(&m->all_here, &m->lock); }
    pthread_mutex_unlock(&m->lock);
}
static float sum_ranks(const meeting *m, int begin, int n, size_t i) {
    return n == 1 ? m->data[begin][i] : sum_ranks(m, begin, n / 2, i) + sum_ranks(m, begin + n / 2, n / 2, i);
}
static tt_status meet_and_sum(void *user, float *data, size_t n) {
    seat *s = (seat *)user;
    const tt_backend *backend = tt_backend_get(s->r.ctx);
    float *mine = (float *)malloc(2 * n * sizeof *mine), *sum = mine + n;      /* data may be a device's */
    size_t i;
    tt_status status;
    if (!mine) { return TT_ERR_MEM; }
    status = backend->download(s->r.ctx, mine, data, n * sizeof *mine);
    s->m->data[s->rank] = mine;
    meet(s->m);
    for (i = 0; i < n; i++) { sum[i] = sum_ranks(s->m, 0, s->m->n_ranks, i); }
    if (s->rank == 0) { s->m->n_calls++; s->m->sent += (double)n; }
    meet(s->m);
    if (status == TT_OK) { status = backend->upload(s->r.ctx, data, sum, n * sizeof *sum); }
    free(mine);
    return status;
}
static void hear(void *user, const char *question, const char *response, const tt_outcome *outcome) {
    (void)question, (void)response, (void)outcome;
    ((seat *)user)->n_heard++;
}
static tt_status odd_is_right(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = in->response_size % 2;
    return TT_OK;
}
static tt_status take_exam(seat *s) {
    tt_task task = s->r.task;
    tt_reducer_desc d = TT_INIT;
    tt_evaluate_desc e = TT_INIT;
    tt_status status;
    d.model = s->r.model;
    d.allreduce = meet_and_sum;
    d.user = s;
    d.rank = s->rank;
    d.world_size = s->m->n_ranks;
    e.reducer = tt_reducer_create(s->r.ctx, &d);
    if (!e.reducer) { return tt_error_status(s->r.ctx); }
    e.n_questions = EXAM_QUESTIONS;
    e.n_samples = 3;
    e.max_new_tokens = 4;
    e.question_accuracy = s->accuracy;
    e.on_response = hear;
    e.user = s;
    task.reward = odd_is_right;
    status = tt_evaluate(s->r.model, s->r.tokenizer, &task, &e, &s->exam);
    tt_reducer_destroy(e.reducer);
    return status;
}
static void *take_seat(void *user) {      /* no steps: an evaluation */
    seat *s = (seat *)user;
    rig_start(&s->r);
    if (s->n_steps == 0) { s->status = take_exam(s); return NULL; }
    s->status = s->r.trainer ? rig_run(&s->r, s->n_steps, s->json, sizeof s->json) : tt_error_status(s->r.ctx);
    return NULL;
}
static tt_status length_reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = in->response_size % 5 == 0 ? (float)NAN : (float)in->response_size / 7;
    return TT_OK;
}
static const tt_reward by_length = {"length", length_reward, NULL, 0.3f, 0};
/* Settings whose denominators, advantages or updates look beyond a group. */
enum { N_SETTINGS = 12 };
static void use_setting(rig *r, int k) {
    tt_trainer_desc *d = &r->desc;
    d->prompts_per_step = 8;
    d->grpo.num_generations = 4;
    if (k == 1) { d->teacher = &r->teacher; d->think.total_steps = 80; d->think.init_pct = 0.5f; }
    if (k == 11) { d->grpo.share_prompts = !TT_TEST_DEVICE; d->grpo.num_mini_batches = 2; d->grpo.micro_batch_tokens = 60; }
    if (k == 2) { d->grpo.scale_rewards = TT_SCALE_BATCH; d->grpo.mask_truncated_completions = 1; }
    if (k == 3) { d->grpo.advantage = TT_ADV_GDPO; d->rewards = &by_length; d->n_rewards = 1; }
    if (k == 4) { d->grpo.advantage = TT_ADV_REINFORCE_PP; d->grpo.aggregation = TT_SEQ_MEAN_FILLED; }
    if (k == 5) { d->grpo.beta = 0.1f; d->grpo.kl_in_reward = 1; d->grpo.aggregation = TT_DR_GRPO; }
    if (k == 6) { d->grpo.beta = 0.1f; d->grpo.num_mini_batches = 2; d->grpo.num_iterations = 2; }
    if (k == 7) { d->grpo.aggregation = TT_BNPO; d->grpo.micro_batch_tokens = 20; d->grpo.token_loss = tt_loss_covariance; d->grpo.token_loss_begin = tt_covariance_begin; d->grpo.token_loss_user = &r->covariance; r->covariance.low = 0.01f; r->covariance.high = 5; }
    if (k == 8) { d->grpo.aggregation = TT_SEQ_SUM_NORM; d->grpo.entropy_coef = 0.01f; }
    if (k == 9) { d->grpo.dynamic_sampling = 2; d->grpo.advantage = TT_ADV_GPG; }
    if (k == 10) { d->grpo.aggregation = TT_SEQ_MEAN_TOKEN_MEAN; d->grpo.overlong_cache = 3; d->teacher = &r->teacher; d->think.total_steps = 80; }
}
/* Runs n_ranks seats and leaves them open. */
static void run_ranks(seat *seats, meeting *m, int n_ranks, int parts, int setting, int n_steps) {
    pthread_t threads[MAX_RANKS];
    int i;
    memset(m, 0, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->all_here, NULL);
    m->n_ranks = n_ranks;
    for (i = 0; i < n_ranks; i++) {
        seat *s = &seats[i];
        memset(s, 0, sizeof *s);
        s->m = m;
        s->rank = i;
        s->n_steps = n_steps;
        rig_open(&s->r, 1, NULL);
        use_setting(&s->r, setting);
        s->r.desc.rank = i;
        s->r.desc.world_size = n_ranks;
        s->r.desc.gradient_parts = parts;
        s->r.desc.allreduce = meet_and_sum;
        s->r.desc.allreduce_user = s;
    }
    for (i = 0; i < n_ranks; i++) { TT_CHECK(pthread_create(&threads[i], NULL, take_seat, &seats[i]) == 0); }
    for (i = 0; i < n_ranks; i++) { pthread_join(threads[i], NULL); }
    for (i = 0; i < n_ranks; i++) { TT_CHECK_OK(seats[i].r.ctx, seats[i].status); }
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->all_here);
}
static void close_ranks(seat *seats, int n) {
    int i;
    for (i = 0; i < n; i++) { rig_close(&seats[i].r); }
}
/* |a - b| / |a| over all weights. */
static double weights_apart(const tt_model *a, const tt_model *b) {
    double apart = 0, size = 0;
    int i;
    size_t k;
    for (i = 0; i < tt_model_n_params(a); i++) {
        const tt_tensor *p = tt_model_param(a, i), *q = tt_model_param(b, i);
        for (k = 0; k < p->size; k++) {
            double x = (double)TT_F(p)[k], y = (double)TT_F(q)[k];
            apart += (x - y) * (x - y);
            size += x * x;
        }
    }
    return sqrt(apart / size);
}
TT_TEST(ranks_give_the_same_bits) {
    static seat one[1], many[MAX_RANKS];
    meeting m;
    int setting, n, i;
    for (setting = 0; setting < N_SETTINGS; setting++) {
        run_ranks(one, &m, 1, 4, setting, 3);
        if (setting == 1) { TT_CHECK(strstr(one[0].json, "\"think/n_guided\":0,") == NULL); }
        for (n = 2; n <= MAX_RANKS; n *= 2) {
            run_ranks(many, &m, n, 4, setting, 3);
            for (i = 0; i < n; i++) {
                if (!TT_CHECK_STR(many[i].json, one[0].json) || !TT_CHECK(same_weights(many[i].r.model, one[0].r.model))) { printf("  setting %d, rank %d of %d\n", setting, i, n); }
            }
            close_ranks(many, n);
        }
        close_ranks(one, 1);
    }
}
TT_TEST(ranks_share_an_evaluation) {
    static seat one[1], many[MAX_RANKS];
    meeting m;
    int n, i;
    run_ranks(one, &m, 1, 0, 0, 0);
    TT_CHECK(one[0].exam.n == 3 * EXAM_QUESTIONS && one[0].exam.accuracy > 0 && one[0].exam.accuracy < 1);
    for (n = 2; n <= MAX_RANKS; n *= 2) {
        int heard = 0;
        run_ranks(many, &m, n, 0, 0, 0);
        for (i = 0; i < n; i++) {
            TT_CHECK_BYTES(&many[i].exam, &one[0].exam, sizeof one[0].exam);
            TT_CHECK_BYTES(many[i].accuracy, one[0].accuracy, sizeof one[0].accuracy);
            heard += many[i].n_heard;
        }
        TT_CHECK_INT(heard, 3 * EXAM_QUESTIONS);
        TT_CHECK(many[0].n_heard < 3 * EXAM_QUESTIONS && many[0].n_heard > 0);
        close_ranks(many, n);
    }
    close_ranks(one, 1);
}
TT_TEST(ranks_agree_with_one_process) {
    static seat one[1], many[MAX_RANKS];
    meeting m;
    int setting, n, i;
    double worst = 0;
    for (setting = 0; setting < N_SETTINGS; setting++) {
        if (setting == 7) { continue; }          /* BNPO and CLIP_COV depend on how the batch is cut */
        run_ranks(one, &m, 1, 0, setting, 3);
        for (n = 2; n <= MAX_RANKS; n *= 2) {
            run_ranks(many, &m, n, 0, setting, 3);
            for (i = 0; i < n; i++) {
                double apart = weights_apart(many[i].r.model, one[0].r.model);
                if (apart > worst) { worst = apart; }
                if (!TT_CHECK(apart < 1e-6) || !TT_CHECK(same_weights(many[i].r.model, many[0].r.model)) || !TT_CHECK_STR(many[i].json, many[0].json)) {
                    printf("  setting %d, rank %d of %d: %g apart\n", setting, i, n, apart);
                }
            }
            if (setting == 0) {                  /* the gradients go as one buffer; four more carry numbers */
                TT_CHECK_INT(m.n_calls, 3 * 5);
                TT_CHECK(m.sent < 3 * 2 * (double)tt_model_size(one[0].r.model));
            }
            close_ranks(many, n);
        }
        close_ranks(one, 1);
    }
    printf("  largest distance %.2g of the weights\n", worst);
}
/* A state saved by two ranks goes on with four and with one. */
TT_TEST(ranks_resume_with_another_number) {
    const char *path = tt_test_tmp("ranks.state");
    static seat whole[1], two[2], other[MAX_RANKS];
    meeting m;
    run_ranks(whole, &m, 1, 4, 1, 5);
    run_ranks(two, &m, 2, 4, 1, 2);
    TT_CHECK_OK(two[1].r.ctx, tt_trainer_save(two[1].r.trainer, path));
    run_ranks(other, &m, 4, 4, 1, 0);
    TT_CHECK_OK(other[0].r.ctx, tt_trainer_load(other[0].r.trainer, path));
    TT_CHECK_INT(tt_trainer_step_count(other[0].r.trainer), 2);
    close_ranks(other, 4);
    run_ranks(other, &m, 1, 4, 1, 0);
    TT_CHECK_OK(other[0].r.ctx, tt_trainer_load(other[0].r.trainer, path));
    TT_CHECK_OK(other[0].r.ctx, rig_run(&other[0].r, 3, other[0].json, sizeof other[0].json));
    TT_CHECK_STR(other[0].json, whole[0].json);
    TT_CHECK(same_weights(other[0].r.model, whole[0].r.model));
    close_ranks(other, 1);
    close_ranks(two, 2);
    close_ranks(whole, 1);
}
#else
TT_TEST(ranks_give_the_same_bits) { TT_SKIP("no POSIX threads"); }
TT_TEST(ranks_share_an_evaluation) { TT_SKIP("no POSIX threads"); }
TT_TEST(ranks_agree_with_one_process) { TT_SKIP("no POSIX threads"); }
TT_TEST(ranks_resume_with_another_number) { TT_SKIP("no POSIX threads"); }
#endif
TT_TEST(trainer_with_reference_and_two_iterations) {
    rig r;
    tt_step_metrics m;
    int i;
    rig_open(&r, 1, NULL);
    r.desc.grpo.beta = 0.05f;
    r.desc.grpo.num_iterations = 2;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    for (i = 0; i < 4; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK(m.grpo.kl > 1e-6);
    TT_CHECK(m.grpo.ppo_kl != 0);              /* the second iteration has moved away from the first */
    rig_close(&r);
}
/* With adapters the reference is the same model with these off: bit for bit what a separate base gives. The state holds
 * the adapters alone, and resumes exactly. */
TT_TEST(trainer_with_adapters) {
    rig r[3];
    tt_model *base = NULL;
    const char *path = tt_test_tmp("adapters.safetensors");
    tt_lora_desc lora = TT_INIT;
    tt_safetensors *state;
    tt_step_metrics m;
    int k, i;
    lora.rank = 4;
    for (k = 0; k < 3; k++) {
        rig_open(&r[k], 1, NULL);
        if (k == 1) { r[k].desc.reference = base = tt_model_copy(r[k].model); }
        TT_CHECK_OK(r[k].ctx, tt_model_lora_add(r[k].model, &lora));
        r[k].desc.grpo.beta = 0.05f;
        r[k].desc.grpo.num_iterations = 2;
        r[k].desc.think.total_steps = 8;
        r[k].desc.teacher = &r[k].teacher;
        rig_start(&r[k]);
        TT_REQUIRE(r[k].trainer != NULL);
    }
    for (i = 0; i < 4; i++) {
        TT_CHECK_OK(r[0].ctx, tt_trainer_step(r[0].trainer, &m));
        TT_CHECK_OK(r[1].ctx, tt_trainer_step(r[1].trainer, NULL));
        TT_CHECK_INT(tt_model_lora_enable(r[0].model, 1), 1);
        if (i == 1) { TT_CHECK_OK(r[0].ctx, tt_trainer_save(r[0].trainer, path)); }
    }
    TT_CHECK(m.grpo.kl > 1e-6);
    TT_CHECK(same_weights(r[0].model, r[1].model));
    TT_CHECK(tt_test_same(tt_model_param(r[0].model, 1), tt_model_param(base, 1)));
    state = tt_safetensors_open(r[2].ctx, path);
    TT_REQUIRE(state != NULL);
    TT_CHECK_INT(tt_safetensors_count(state), 3 * 7 * 2);
    tt_safetensors_close(state);
    TT_CHECK_OK(r[2].ctx, tt_trainer_load(r[2].trainer, path));
    for (i = 0; i < 2; i++) { TT_CHECK_OK(r[2].ctx, tt_trainer_step(r[2].trainer, NULL)); }
    TT_CHECK(same_weights(r[0].model, r[2].model));
    tt_model_destroy(base);
    for (k = 0; k < 3; k++) { rig_close(&r[k]); }
}
TT_TEST(trainer_with_teacher) {
    rig r;
    tt_step_metrics m;
    int i, guided = 0;
    rig_open(&r, 1, NULL);
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 30;
    r.desc.grpo.max_completion_length = 10;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    for (i = 0; i < 20 && !guided; i++) {
        const tt_rollouts *rollouts = tt_trainer_rollouts(r.trainer);
        int k;
        TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
        for (k = 0; k < rollouts->n; k++) { guided += rollouts->items[k].guided; }
        TT_CHECK_INT(m.think.n_guided, guided);
    }
    TT_CHECK(guided > 0 && m.think.pct > 0);
    rig_close(&r);
}

/* ---- trainer: further settings ---- */
static tt_status size_reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = (float)in->response_size;
    return TT_OK;
}
static tt_status token_reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = (float)in->n_tokens + (float)in->tokens[in->n_tokens - 1] / 1024;
    return TT_OK;
}
static tt_status moody_reward(void *user, const tt_reward_input *in, float *reward) {
    int *calls = (int *)user;
    (void)in;
    *reward = 0.125f;
    return ++*calls % 3 ? TT_OK : TT_ERR_FILE;
}
static double mean_of(const tt_rollouts *all, int k) {
    double sum = 0;
    int i, n = 0;
    for (i = 0; i < all->n; i++) { if (!isnan(all->items[i].rewards[k])) { sum += (double)all->items[i].rewards[k]; n++; } }
    return sum / n;
}
TT_TEST(trainer_adds_and_logs_rewards) {
    tt_reward rewards[3];
    tt_step_metrics m;
    tt_text json = TT_INIT;
    const tt_rollouts *all;
    int calls = 0, i;
    rig r;
    memset(rewards, 0, sizeof rewards);
    rig_open(&r, 1, NULL);
    rewards[0].name = "length";
    rewards[0].reward = size_reward;
    rewards[0].weight = -0.5f;
    rewards[1].name = "moody";
    rewards[1].reward = moody_reward;
    rewards[1].user = &calls;
    rewards[2].name = "only \"seen\"";
    rewards[2].reward = token_reward;
    rewards[2].log_only = 1;
    r.desc.rewards = rewards;
    r.desc.n_rewards = 3;
    r.desc.task_weight = 2;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    memset(rewards, 0, sizeof rewards);        /* they were copied */
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    all = tt_trainer_rollouts(r.trainer);
    for (i = 0; i < all->n; i++) {
        const tt_rollout *o = &all->items[i];
        double want = 2 * (double)o->rewards[0] - 0.5 * (double)o->rewards[1] + (isnan(o->rewards[2]) ? 0 : 0.125);
        TT_CHECK_NEAR(o->reward, want, 1e-6);
        TT_CHECK_NEAR(o->rewards[3], o->response_length + (double)o->tokens[o->prompt_length + o->response_length - 1] / 1024, 1e-6);
        TT_CHECK_INT(isnan(o->rewards[2]) != 0, i % 3 == 2);
    }
    TT_CHECK_INT(calls, all->n);
    TT_CHECK_NEAR(m.reward_errors, all->n / 3, 0);
    TT_CHECK_INT(m.n_rewards, 4);
    TT_CHECK_STR(m.reward_names[0], "echo");
    json.ctx = r.ctx;
    TT_CHECK_OK(r.ctx, tt_metrics_json(&m, &json));
    {
        tt_json *root = tt_json_parse(r.ctx, json.data, json.size);
        TT_REQUIRE(root != NULL);
        TT_CHECK_NEAR(tt_json_number(root, "rewards/echo/mean", -9), mean_of(all, 0), 1e-6);
        TT_CHECK_NEAR(tt_json_number(root, "rewards/length/mean", -9), mean_of(all, 1), 1e-6);
        TT_CHECK_NEAR(tt_json_number(root, "rewards/moody/mean", -9), 0.125, 1e-6);
        TT_CHECK_NEAR(tt_json_number(root, "rewards/only \"seen\"/mean", -9), mean_of(all, 3), 1e-6);
        TT_CHECK(tt_json_number(root, "rollout_tokens_per_s", 0) > 0 && tt_json_number(root, "update_tokens_per_s", 0) > 0);
        tt_json_free(r.ctx, root);
    }
    tt_text_free(&json);
    tt_trainer_destroy(r.trainer);
    rewards[0].name = "nothing";
    r.desc.n_rewards = 1;
    rig_start(&r);
    TT_CHECK(r.trainer == NULL);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "rewards[0].reward is NULL");
    r.desc.n_rewards = TT_MAX_REWARDS;
    rig_start(&r);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "n_rewards is 8, expected 0 .. 7");
    rig_close(&r);
}
/* The task's reward fails for one letter: those responses have no score, the others are trained as ever. */
static tt_status picky_reward(void *user, const tt_reward_input *in, float *reward) {
    echo *e = (echo *)user;
    if (in->answer[1] == 'b') { return tt_fail(e->ctx, TT_ERR_NUMBER, "no b please"); }
    return echo_reward(user, in, reward);
}
static void keep_log(void *user, tt_status status, const char *text) {
    (void)status;
    snprintf((char *)user, 200, "%s", text);
}
TT_TEST(trainer_survives_a_failing_reward) {
    char log[200] = "";
    tt_step_metrics m;
    const tt_rollouts *all;
    int i, failed = 0, step;
    rig r;
    rig_open(&r, 1, NULL);
    r.ctx->log = keep_log;
    r.ctx->log_user = log;
    r.task.reward = picky_reward;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    for (step = 0; step < 6 && !failed; step++) {
        TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
        all = tt_trainer_rollouts(r.trainer);
        for (i = 0; i < all->n; i++) {
            int b = all->questions[all->items[i].group][1] == 'b';
            TT_CHECK_INT(isnan(all->items[i].reward) != 0, b);
            if (b) { TT_CHECK(all->items[i].advantage == 0); }
            failed += b;
        }
        TT_CHECK_NEAR(m.reward_errors, failed, 0);
        TT_CHECK_NEAR(m.grpo.n_unscored, failed, 0);
    }
    TT_CHECK(failed > 0);
    TT_CHECK_CONTAINS(log, "reward echo of prompt");
    TT_CHECK_CONTAINS(log, "no b please");
    TT_CHECK_STR(tt_error(r.ctx), "");
    TT_CHECK(isfinite(m.grpo.reward) && isfinite(m.grad_norm));
    rig_close(&r);
}
/* Dynamic sampling replaces exactly the groups without a difference, and a run without any is as it would be without it. */
TT_TEST(trainer_replaces_groups_of_equal_rewards) {
    tt_step_metrics plain, m;
    const tt_rollouts *a, *b;
    int g, i, replaced = 0;
    rig p, r;
    rig_open(&p, 1, NULL);
    rig_open(&r, 1, NULL);
    r.desc.grpo.num_generations = p.desc.grpo.num_generations = 3;
    r.desc.prompts_per_step = p.desc.prompts_per_step = 12;
    r.desc.grpo.dynamic_sampling = 3;
    rig_start(&p);
    rig_start(&r);
    TT_REQUIRE(p.trainer && r.trainer);
    TT_CHECK_OK(p.ctx, tt_trainer_step(p.trainer, &plain));
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    a = tt_trainer_rollouts(p.trainer);
    b = tt_trainer_rollouts(r.trainer);
    for (g = 0; g < 12; g++) {
        const tt_rollout *x = &a->items[3 * g], *y = &b->items[3 * g];
        int dull = x[0].reward == x[1].reward && x[1].reward == x[2].reward, same = 1;
        for (i = 0; i < 3; i++) {
            same = same && x[i].response_length == y[i].response_length && memcmp(x[i].tokens, y[i].tokens, (size_t)(x[i].prompt_length + x[i].response_length) * sizeof(int32_t)) == 0;
            TT_CHECK_INT(y[i].group, g);
        }
        TT_CHECK_INT(same, !dull);
        if (dull) { TT_CHECK(y->prompt_id != x->prompt_id && b->questions[g] != NULL); }
        replaced += dull;
    }
    TT_CHECK(replaced > 0 && replaced < 12);
    TT_CHECK(m.n_resampled >= replaced);
    TT_CHECK(m.grpo.frac_reward_zero_std < plain.grpo.frac_reward_zero_std);
    TT_CHECK(m.rollout_tokens > plain.rollout_tokens && m.num_tokens == m.rollout_tokens);
    rig_close(&p);
    rig_close(&r);
}
/* Two mini-batches of two groups are two updates: the second has moved away from its rollouts. */
static void updates_on_mini_batches(int share_prompts) {
    tt_step_metrics m;
    rig r;
    rig_open(&r, 1, NULL);
    r.desc.grpo.share_prompts = share_prompts;
    r.desc.grpo.num_mini_batches = 2;
    r.desc.grpo.token_loss = tt_loss_covariance;
    r.desc.grpo.token_loss_begin = tt_covariance_begin;
    r.desc.grpo.token_loss_user = &r.covariance;
    r.covariance.kl = 1;
    r.covariance.ratio = 0.25f;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    TT_CHECK(m.grpo.ppo_kl != 0);
    TT_CHECK(m.grpo.sampling_logp_difference_max == 0);      /* old log-probs are still the sampler's, to the bit */
    TT_CHECK_NEAR(m.grpo.mismatch_mean, 1, 1e-9);
    TT_CHECK_NEAR(r.covariance.n_chosen / r.covariance.n_tokens, 0.25, 0.02);      /* of each */
    TT_CHECK_INT(r.trainer->optimizer->step, 2);
    tt_trainer_destroy(r.trainer);
    r.desc.grpo.num_mini_batches = 3;
    rig_start(&r);
    TT_CHECK(r.trainer == NULL);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "num_mini_batches is 3, expected a divisor of the rank's 4 prompts");
    rig_close(&r);
}
TT_TEST(trainer_updates_on_mini_batches) {
    updates_on_mini_batches(0);
    if (!TT_TEST_DEVICE) { updates_on_mini_batches(1); }      /* trees of sequences: on the CPU alone */
}
static tt_status repeat_question(void *user, const char *question, const char *answer, int k, tt_text *response) {
    ++*(int *)user;
    TT_CHECK(k == 0 || k == 1);
    TT_CHECK_STR(question, answer);
    return k == 1 ? tt_text_append(response, answer, strlen(answer)) : TT_OK;      /* only for the second of two */
}
TT_TEST(trainer_mixes_in_off_policy_responses) {
    tt_step_metrics m;
    const tt_rollouts *all;
    int calls = 0, i, step;
    double first = 0;
    rig r;
    rig_open(&r, 1, NULL);
    r.desc.off_policy = repeat_question;
    r.desc.off_policy_user = &calls;
    r.desc.n_off_policy = 2;
    r.desc.grpo.advantage = TT_ADV_LUFFY;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    all = tt_trainer_rollouts(r.trainer);
    TT_CHECK_INT(calls, 8);
    for (i = 0; i < all->n; i++) {
        TT_CHECK_INT(all->items[i].off_policy, i % 8 == 7);
        if (i % 8 == 7) { TT_CHECK(all->items[i].reward == 1 && all->items[i].advantage > 0); }
    }
    TT_CHECK(m.grpo.n_guided_tokens > 0 && m.think.guided_share == 0);
    first = mean_of(all, 0);
    for (step = 0; step < 80; step++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK(m.think.own_reward > first + 0.3);      /* shown the answers, the student learns them */
    tt_trainer_destroy(r.trainer);
    r.desc.n_off_policy = 8;
    rig_start(&r);
    TT_CHECK(r.trainer == NULL);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "n_off_policy is 8");
    rig_close(&r);
}
/* Tensors of the caller's own, here a teacher that follows, are saved and loaded with the trainer. */
TT_TEST(trainer_saves_what_it_is_given_beside) {
    const char *path = tt_test_tmp("beside.state");
    tt_model *average[2];
    tt_named beside[2];
    rig a, b;
    int i;
    rig_open(&a, 1, NULL);
    rig_open(&b, 1, NULL);
    average[0] = tt_model_copy(a.model);
    average[1] = tt_model_copy(b.model);
    for (i = 0; i < 2; i++) {
        beside[i].name = "ema.first";
        beside[i].tensor = tt_model_param(average[i], 0);
    }
    a.desc.also = &beside[0];
    b.desc.also = &beside[1];
    a.desc.n_also = b.desc.n_also = 1;
    rig_start(&a);
    rig_start(&b);
    TT_REQUIRE(a.trainer && b.trainer);
    TT_CHECK_OK(a.ctx, rig_run(&a, 2, NULL, 0));
    TT_CHECK_OK(a.ctx, tt_teacher_follow(average[0], a.model, 0.5f));
    TT_CHECK(!same_weights(average[0], a.model) && !same_weights(average[0], average[1]));
    TT_CHECK_OK(a.ctx, tt_trainer_save(a.trainer, path));
    TT_CHECK_OK(b.ctx, tt_trainer_load(b.trainer, path));
    TT_CHECK(tt_test_same(beside[0].tensor, beside[1].tensor));
    TT_CHECK_OK(a.ctx, rig_run(&a, 2, NULL, 0));
    TT_CHECK_OK(b.ctx, rig_run(&b, 2, NULL, 0));
    TT_CHECK(same_weights(a.model, b.model));
    tt_trainer_destroy(b.trainer);
    b.desc.also = NULL;
    b.desc.n_also = 0;
    rig_start(&b);
    TT_CHECK(tt_trainer_load(b.trainer, path) != TT_OK);      /* a tensor that nobody wants is not lost quietly */
    tt_model_destroy(average[0]);
    tt_model_destroy(average[1]);
    rig_close(&a);
    rig_close(&b);
}
TT_TEST(trainer_takes_any_model_as_teacher) {
    int kind;
    for (kind = 0; kind < 3; kind++) {
        tt_teacher_prompt prompt = TT_INIT;
        tt_model_teacher *built;
        tt_model *model;
        tt_step_metrics m;
        double guided = 0, tokens = 0, counted = 0;
        int step;
        rig r;
        rig_open(&r, 1, NULL);
        model = kind == 1 ? r.model : tt_model_copy(r.model);
        prompt.prompt_template = "<q>{question}<a>{response}";
        prompt.stop_token = "<end>";
        prompt.max_new_tokens = 3;
        built = tt_model_teacher_create(model, r.tokenizer, &prompt);
        TT_REQUIRE(built != NULL);
        r.teacher = tt_teacher_model(built);
        r.desc.teacher = &r.teacher;
        r.desc.think.total_steps = 30;
        rig_start(&r);
        TT_REQUIRE(r.trainer != NULL);
        for (step = 0; step < 6; step++) {
            TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
            if (kind == 2) { TT_CHECK_OK(r.ctx, tt_teacher_follow(model, r.model, 0.99f)); }
            guided += m.think.n_guided;
            tokens += m.think.teacher_tokens;
            counted += m.rollout_tokens + m.think.teacher_tokens;
        }
        TT_CHECK(guided > 0 && tokens >= guided && tokens <= 3 * guided);      /* what it sampled, not what was appended */
        TT_CHECK_NEAR(m.num_tokens, counted, 0);
        TT_CHECK_INT(same_weights(model, r.model), kind == 1);
        tt_trainer_destroy(r.trainer);
        r.trainer = NULL;
        tt_model_teacher_destroy(built);
        if (model != r.model) { tt_model_destroy(model); }
        rig_close(&r);
    }
}
/* The divergence from the base can be watched without being trained on: weights as without it. */
TT_TEST(trainer_measures_divergence_on_request) {
    tt_step_metrics m, n;
    rig a, b;
    int i;
    rig_open(&a, 1, NULL);
    rig_open(&b, 1, NULL);
    b.desc.measure_kl = 1;
    rig_start(&a);
    rig_start(&b);
    TT_REQUIRE(a.trainer && b.trainer);
    for (i = 0; i < 3; i++) {
        TT_CHECK_OK(a.ctx, tt_trainer_step(a.trainer, &m));
        TT_CHECK_OK(b.ctx, tt_trainer_step(b.trainer, &n));
    }
    TT_CHECK(m.grpo.kl == 0 && n.grpo.kl > 1e-6);
    TT_CHECK(same_weights(a.model, b.model));
    rig_close(&a);
    rig_close(&b);
}
TT_TEST(trainer_takes_divergence_from_the_reward) {
    tt_step_metrics m;
    rig r;
    int i;
    rig_open(&r, 1, NULL);
    r.desc.grpo.beta = 0.5f;
    r.desc.grpo.kl_in_reward = 1;
    r.desc.grpo.kl = TT_KL_K1;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    TT_CHECK_NEAR(m.grpo.reward_kl, 0, 1e-9);      /* the student still is the reference */
    for (i = 0; i < 3; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK(m.grpo.reward_kl != 0);
    TT_CHECK_NEAR(m.grpo.reward, m.grpo.rewards[0] - m.grpo.reward_kl, 1e-6);
    rig_close(&r);
}
static tt_status no_reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    (void)in;
    *reward = 0;
    return TT_OK;
}
static tt_status poison(void *user, float *data, size_t n) {      /* data may be a device's */
    tt_context *ctx = (tt_context *)user;
    const float nan = (float)NAN;
    return tt_backend_get(ctx)->upload(ctx, data + n - 1, &nan, sizeof nan);
}
TT_TEST(trainer_stops_with_a_reason) {
    const char *path = tt_test_tmp("troubled.state");
    tt_step_metrics m;
    rig r;
    int i;
    rig_open(&r, 1, NULL);
    r.task.reward = no_reward;
    r.desc.abort_patience = 3;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    for (i = 0; i < 2; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK_OK(r.ctx, tt_trainer_save(r.trainer, path));
    memset(&m, 0, sizeof m);
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_STOP);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "stopped after step 2: a reward that has collapsed, 3 steps in a row");
    TT_CHECK(m.step == 2 && m.num_tokens > 0);                       /* the step is done, its metrics are there */
    TT_CHECK_INT(tt_trainer_step_count(r.trainer), 3);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));              /* who goes on has patience again */
    TT_CHECK_OK(r.ctx, tt_trainer_load(r.trainer, path));
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_STOP);       /* a resumed run stops where the first one did */
    tt_trainer_destroy(r.trainer);

    r.task.reward = echo_reward;
    r.desc.abort_entropy = 100;
    rig_start(&r);
    for (i = 0; i < 2; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_STOP);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "an entropy that has collapsed");
    tt_trainer_destroy(r.trainer);

    r.desc.abort_entropy = 0;
    r.desc.allreduce = poison;
    r.desc.allreduce_user = r.ctx;
    rig_start(&r);
    for (i = 0; i < 2; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); TT_CHECK(m.update_skipped == 1); }
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_STOP);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "that is not finite, 3 steps in a row");
    tt_trainer_destroy(r.trainer);

    r.desc.abort_patience = 0;                                       /* of skipped updates there may be a few all the same */
    rig_start(&r);
    for (i = 0; i < TT_MAX_SKIPPED - 1; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_STOP);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "that is not finite, 10 steps in a row");
    tt_trainer_destroy(r.trainer);

    r.desc.abort_patience = -1;
    rig_start(&r);
    for (i = 0; i < TT_MAX_SKIPPED + 1; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m)); }
    rig_close(&r);
}
/* BNPO divides by the micro-batch and takes the mean over micro-batches: the split shows, as in TRL; all else does not. */
TT_TEST(trainer_has_bnpos_trap_only_under_its_name) {
    int how;
    for (how = TT_TOKEN_MEAN; how <= TT_BNPO; how++) {
        tt_step_metrics m, n;
        rig a, b;
        rig_open(&a, 1, NULL);
        rig_open(&b, 1, NULL);
        b.desc.grpo.micro_batch_tokens = 20;
        a.desc.grpo.aggregation = b.desc.grpo.aggregation = (tt_aggregation)how;
        rig_start(&a);
        rig_start(&b);
        TT_REQUIRE(a.trainer && b.trainer);
        TT_CHECK_OK(a.ctx, tt_trainer_step(a.trainer, &m));
        TT_CHECK_OK(b.ctx, tt_trainer_step(b.trainer, &n));
        if (how == TT_BNPO) { TT_CHECK(fabs(n.grad_norm / m.grad_norm - 1) > 1e-4 && n.grad_norm < 2 * m.grad_norm && m.grad_norm < 2 * n.grad_norm); }
        else { TT_CHECK_NEAR(n.grad_norm / m.grad_norm, 1, 1e-5); }
        rig_close(&a);
        rig_close(&b);
    }
}
TT_TEST(trainer_errors_name_field_and_value) {
    tt_test_memory memory = tt_test_memory_none();
    tt_step_metrics m;
    rig r;
    rig_open(&r, 1, &memory);
#define EXPECT_ERROR(part)                        \
    do {                                          \
        rig_start(&r);                            \
        TT_CHECK(r.trainer == NULL);              \
        TT_CHECK_CONTAINS(tt_error(r.ctx), part); \
    } while (0)
    r.desc.grpo.max_completion_length = 16;
    EXPECT_ERROR("max_completion_length is 16");
    r.desc.grpo.max_completion_length = 6;
    r.task.end_token = "<stop>";
    EXPECT_ERROR("<stop>");
    r.task.end_token = "<end>";
    r.task.prompt_template = "<q>";
    EXPECT_ERROR("{question}");
    r.task.prompt_template = "<q>{question}<a>";
    r.desc.schedule.lr = 0;
    EXPECT_ERROR("schedule.lr is 0");
    r.desc.schedule.lr = HUGE_VALF;
    EXPECT_ERROR("schedule.lr is inf");
    r.desc.schedule.lr = 1e38f;
    EXPECT_ERROR("schedule.lr is 1e+38");
    r.desc.schedule.lr = (float)NAN;
    EXPECT_ERROR("schedule.lr is ");
    r.desc.schedule.lr = 0.01f;
    r.desc.schedule.min_lr = -1;
    EXPECT_ERROR("schedule.min_lr is -1");
    r.desc.schedule.min_lr = 0;
    r.desc.schedule.warmup_steps = -2;
    EXPECT_ERROR("schedule.warmup_steps is -2");
    r.desc.schedule.warmup_steps = 0;
    r.desc.schedule.type = (tt_schedule_type)7;
    EXPECT_ERROR("schedule.type is 7");
    r.desc.schedule.type = TT_CONSTANT;
    r.desc.adamw.weight_decay = 1e38f;
    EXPECT_ERROR("weight_decay 1e+38");
    r.desc.adamw.weight_decay = 0;
    r.desc.max_batch = -5;
    EXPECT_ERROR("max_batch is -5");
    r.desc.max_batch = 0;
    r.desc.grpo.kl = (tt_kl_type)-1;
    EXPECT_ERROR("kl is -1,");
    r.desc.grpo.kl = TT_KL_K3;
    r.teacher.feedback = NULL;
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 1;
    EXPECT_ERROR("teacher.feedback is NULL");
    r.teacher.feedback = echo_feedback;
    r.desc.think.total_steps = 0;
    r.desc.teacher = NULL;
    r.desc.world_size = 2;
    EXPECT_ERROR("world_size is 2");
    r.desc.world_size = 0;
    r.desc.teacher = &r.teacher;
    EXPECT_ERROR("total_steps is 0");
    r.desc.teacher = NULL;
    {
        tt_model_config small = *tt_model_config_get(r.model);
        small.vocab_size = 4;
        r.desc.model = tt_model_create(r.ctx, &small, 1);
        EXPECT_ERROR("vocab_size is 4");
        tt_model_destroy(r.desc.model);
        r.desc.model = r.model;
    }
    r.desc.grpo.max_completion_length = 14;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "max_completion_length is 14");
    tt_trainer_destroy(r.trainer);
    r.desc.grpo.max_completion_length = 6;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    r.e.bad_reward = HUGE_VALF;
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_NUMBER);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "sample 0");
    TT_CHECK_INT(tt_trainer_step_count(r.trainer), 0);
    r.e.bad_reward = 0;
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));        /* an error leaves a usable trainer */
    rig_close(&r);
    TT_CHECK_NO_LEAK(memory);
}
static tt_status fail_silently(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    (void)user;
    (void)split;
    (void)index;
    (void)question;
    (void)answer;
    return TT_ERR_IO;
}
static tt_status respond_silently(void *user, const char *question, const char *answer, int k, tt_text *response) {
    (void)user;
    (void)question;
    (void)answer;
    (void)k;
    (void)response;
    return TT_ERR_FILE;
}
TT_TEST(a_callback_that_fails_without_a_word_is_named) {
    rig r;
    tt_step_metrics m;
    rig_open(&r, 1, NULL);
    r.task.question = fail_silently;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "task.question: question ");
    TT_CHECK_CONTAINS(tt_error(r.ctx), tt_status_name(TT_ERR_IO));
    TT_CHECK_INT(tt_error_status(r.ctx), TT_ERR_IO);
    tt_trainer_destroy(r.trainer);
    r.task.question = echo_question;
    r.desc.off_policy = respond_silently;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_FILE);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "off_policy: response 0 failed");
    rig_close(&r);
}
static tt_trainer *own_trainer;
static tt_status step_within(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    (void)user;
    (void)attempts;
    (void)n;
    (void)out;
    return tt_trainer_step(own_trainer, NULL);
}
TT_TEST(a_step_within_a_step_is_refused) {
    rig r;
    tt_step_metrics m;
    rig_open(&r, 1, NULL);
    r.teacher.feedback = step_within;
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 1;
    r.desc.think.init_pct = r.desc.think.min_pct = 1;
    r.desc.grpo.max_completion_length = 10;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    own_trainer = r.trainer;
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "called by a callback of this trainer's own step");
    TT_CHECK_INT(tt_trainer_step_count(r.trainer), 0);
    TT_CHECK_INT(tt_trainer_step(r.trainer, &m), TT_ERR_ARG);      /* of the callback's again, not of the first call */
    TT_CHECK_CONTAINS(tt_error(r.ctx), "callback");
    rig_close(&r);
}
static tt_status give_answer(void *user, const char *question, const char *answer, int k, tt_text *response) {
    (void)user;
    (void)question;
    (void)k;
    return tt_text_append(response, answer, strlen(answer));
}
TT_TEST(trainer_survives_lost_memory) {
    long n, calls = 0, step = 1;
    for (n = 0; n < 100000; n += step) {
        tt_test_memory memory = tt_test_memory_none();
        tt_status status = TT_ERR_MEM;
        rig r;
        rig_open(&r, 1, &memory);
        TT_REQUIRE(r.ctx && r.model && r.tokenizer);
        r.desc.teacher = &r.teacher;
        r.desc.think.total_steps = 4;
        r.desc.grpo.beta = 0.1f;
        r.desc.grpo.num_iterations = 2;
        r.desc.grpo.kl_in_reward = 1;
        r.desc.grpo.dynamic_sampling = 2;
        r.desc.off_policy = give_answer;
        r.desc.prompts_per_step = 1;
        r.desc.grpo.num_generations = 2;
        memory.fail_at = n ? memory.calls + n : 0;
        calls = memory.calls;
        rig_start(&r);
        if (r.trainer) { status = tt_trainer_step(r.trainer, NULL); }
        calls = memory.calls - calls;
        if (!n) { TT_CHECK_OK(r.ctx, status); }
        if (n && n <= calls) { TT_CHECK_INT(status, TT_ERR_MEM); }
        if (n && n <= calls) { TT_CHECK_CONTAINS(tt_error(r.ctx), "out of memory"); }
        rig_close(&r);
        TT_CHECK_NO_LEAK(memory);
        if (n == 0) { step = 1 + calls / 150; n = 1 - step; }
        else if (n > calls) { break; }
    }
    TT_CHECK(calls > 50);
}
TT_TEST(metrics_are_json) {
    static const char *const names[] = {"reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio", "entropy", "kl",
        "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/dual_mean", "ppo_kl", "grad_norm", "learning_rate", "num_tokens",
        "sampling/sampling_logp_difference/max", "think/pct", "think/reflection_rate", "think/aas_factor_max"};
    tt_context *ctx = tt_create(NULL);
    tt_step_metrics m;
    tt_text text = TT_INIT;
    tt_json *json;
    size_t i;
    memset(&m, 0, sizeof m);
    text.ctx = ctx;
    m.step = 7;
    m.grpo.reward = 0.625;
    m.grad_norm = HUGE_VAL;
    m.step_s = 1.5;
    TT_CHECK_OK(ctx, tt_metrics_json(&m, &text));
    json = tt_json_parse(ctx, text.data, text.size);
    TT_REQUIRE(json != NULL);
    for (i = 0; i < sizeof names / sizeof *names; i++) { if (!TT_CHECK(tt_json_get(json, names[i]) != NULL)) { printf("  %s\n", names[i]); } }
    TT_CHECK_INT(tt_json_number(json, "step", 0), 7);
    TT_CHECK_NEAR(tt_json_number(json, "reward", 0), 0.625, 0);
    TT_CHECK_NEAR(tt_json_number(json, "step_time", 0), 1.5, 0);
    TT_CHECK_INT(tt_json_get(json, "grad_norm")->type, TT_JSON_NULL);
    tt_json_free(ctx, json);
    m.step_s = 0;
    text.size = 0;
    TT_CHECK_OK(ctx, tt_metrics_json(&m, &text));
    TT_CHECK(strstr(text.data, "step_time") == NULL);
    tt_text_free(&text);
    tt_destroy(ctx);
}
/* ---- two rewards, and what is cut ---- */
static tt_status long_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    int i;
    (void)user;
    (void)attempts;
    for (i = 0; i < n; i++) { if (tt_text_append(&out[i].reason, " a b c d a b", 12) != TT_OK) { return TT_ERR_MEM; } }
    return TT_OK;
}
TT_TEST(reward_is_of_all_responses_and_own_reward_of_the_students_own) {
    rig r;
    tt_step_metrics m;
    tt_text text = TT_INIT;
    const tt_rollouts *all;
    double sum = 0, own = 0, guided = 0;
    int i, n_guided = 0;
    rig_open(&r, 1, NULL);
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 4;
    r.desc.think.init_pct = 0.5f;
    r.desc.grpo.max_completion_length = 10;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    all = tt_trainer_rollouts(r.trainer);
    for (i = 0; i < all->n; i++) {
        double reward = (double)all->items[i].reward;
        sum += reward;
        n_guided += all->items[i].guided;
        *(all->items[i].guided ? &guided : &own) += reward;
    }
    TT_REQUIRE(n_guided > 0 && n_guided < all->n);
    TT_CHECK_NEAR(m.grpo.reward, sum / all->n, 1e-6);
    TT_CHECK_NEAR(m.think.own_reward, own / (all->n - n_guided), 1e-6);
    TT_CHECK_NEAR(m.think.guided_reward, guided / n_guided, 1e-6);
    text.ctx = r.ctx;
    TT_CHECK_OK(r.ctx, tt_metrics_json(&m, &text));
    TT_CHECK_CONTAINS(text.data, "\"reward\":");
    TT_CHECK_CONTAINS(text.data, "\"think/own_reward\":");
    TT_CHECK_CONTAINS(text.data, "\"think/guided_reward\":");
    TT_CHECK_CONTAINS(text.data, "\"think/cut\":");
    tt_text_free(&text);
    tt_trainer_destroy(r.trainer);
    r.desc.teacher = NULL;
    rig_start(&r);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    TT_CHECK_NEAR(m.think.own_reward, m.grpo.reward, 1e-9);
    rig_close(&r);
}
static tt_status long_answer(void *user, const char *question, const char *answer, int k, tt_text *response) {
    (void)user;
    (void)question;
    (void)answer;
    (void)k;
    return tt_text_append(response, " a b c d a b c d", 16);
}
TT_TEST(what_max_completion_length_cuts_is_counted) {
    rig r;
    tt_step_metrics m;
    tt_text text = TT_INIT;
    rig_open(&r, 1, NULL);
    r.teacher.feedback = long_feedback;
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 4;
    r.desc.off_policy = long_answer;
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    TT_CHECK(m.think.n_guided > 0 && m.think.n_cut == m.think.n_guided && m.think.longest_guided >= 1 + 1 + 6 + 1 + 1);
    TT_CHECK_NEAR(m.n_off_policy_cut, 4, 0);      /* one for each prompt */
    text.ctx = r.ctx;
    TT_CHECK_OK(r.ctx, tt_metrics_json(&m, &text));
    TT_CHECK_CONTAINS(text.data, "\"off_policy/cut\":4");
    TT_CHECK(strstr(text.data, "\"think/cut\":0") == NULL);
    tt_text_free(&text);
    rig_close(&r);
}
/* ---- prompts that do not fit ---- */
static const char mixed_lines[] =
    "{\"question\":\" a\",\"answer\":\" a\"}\n\n{\"question\":\" a b c d a b c d a b c d a b c d\",\"answer\":\" b\"}\n"
    "{\"question\":\" c\",\"answer\":\" c\"}\n{\"question\":\" d a b c d a b c d a b\",\"answer\":\" b\"}\n{\"question\":\" d\",\"answer\":\" d\"}\n";
TT_TEST(a_question_that_is_too_long_is_named_before_training) {
    rig r;
    tt_jsonl *data;
    int n = -1, i;
    rig_open(&r, 1, NULL);
    data = load_lines(r.ctx, mixed_lines);
    TT_REQUIRE(data != NULL);
    TT_CHECK_OK(r.ctx, tt_jsonl_hold_out(data, 2));
    r.task = tt_task_jsonl(data, "<q>{question}<a>", "<end>");
    rig_start(&r);                                /* positions 16, max_completion_length 6 */
    TT_CHECK(r.trainer == NULL);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "question 1 (\" a b c d");
    TT_CHECK_CONTAINS(tt_error(r.ctx), "a prompt of 18 tokens, which leaves no room for 6 new ones in max_position_embeddings 16");
    tt_error_clear(r.ctx);
    TT_CHECK_INT(tt_jsonl_limit(data, r.tokenizer, r.task.prompt_template, 10, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "the prompts of 2 records, the first in line 3, are longer than 10 tokens (the longest has 18)");
    tt_error_clear(r.ctx);
    TT_CHECK_INT(tt_jsonl_count(data, 0) * 10 + tt_jsonl_count(data, 1), 32);      /* nothing is lost by asking */
    TT_CHECK_OK(r.ctx, tt_jsonl_limit(data, r.tokenizer, r.task.prompt_template, 10, &n));
    TT_CHECK_INT(n, 2);
    TT_CHECK_INT(tt_jsonl_count(data, 0), 2);
    TT_CHECK_INT(tt_jsonl_count(data, 1), 1);
    for (i = 0; i < 3; i++) {
        static const char *const left[3] = {" a", " c", " d"};
        tt_text question = TT_INIT, answer = TT_INIT;
        question.ctx = answer.ctx = r.ctx;
        TT_CHECK_OK(r.ctx, r.task.question(r.task.user, i == 2, (uint64_t)(i % 2), &question, &answer));
        TT_CHECK_STR(question.data, left[i]);
        TT_CHECK_STR(answer.data, left[i]);
        tt_text_free(&question);
        tt_text_free(&answer);
    }
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    for (i = 0; i < 4; i++) { TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, NULL)); }
    TT_CHECK_OK(r.ctx, tt_jsonl_limit(data, r.tokenizer, r.task.prompt_template, 1, &n));
    TT_CHECK_INT(n, 3);
    TT_CHECK_INT(tt_jsonl_count(data, 0) + tt_jsonl_count(data, 1), 0);
    TT_CHECK_INT(tt_trainer_step(r.trainer, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "no records");
    tt_jsonl_destroy(data);
    rig_close(&r);
}
/* ---- rewards at the end of the numbers ---- */
static tt_status wild_reward(void *user, const tt_reward_input *in, float *reward) {
    *reward = ((const echo *)user)->rewards[in->n_tokens % 4];
    return TT_OK;
}
TT_TEST(rewards_of_any_size_train_or_are_left_out) {
    static float values[6][4] = {{1e38f, -1e38f, 1e38f, 0}, {3.4e38f, 3.4e38f, -3.4e38f, -3.4e38f}, {1e-45f, 0, 1e-45f, 0},
                                 {0.5f, 0, 0, 1}, {0.5f, 0, 0, 1}, {0.5f, 0, 0, 1}};
    int k, scale;
    values[3][1] = (float)NAN;
    values[4][1] = HUGE_VALF;
    values[5][1] = -HUGE_VALF;
    for (k = 0; k < 6; k++) {
        for (scale = TT_SCALE_GROUP; scale <= TT_SCALE_NONE; scale++) {
            rig r;
            tt_step_metrics m;
            tt_text text = TT_INIT;
            int step;
            rig_open(&r, 1, NULL);
            r.task.reward = wild_reward;
            r.desc.grpo.scale_rewards = (tt_scale_rewards)scale;
            r.e.rewards = values[k];
            rig_start(&r);
            TT_REQUIRE(r.trainer != NULL);
            text.ctx = r.ctx;
            for (step = 0; step < 3; step++) {
                TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
                TT_CHECK(isfinite(m.grpo.reward));
                if (k >= 4) { TT_CHECK(m.reward_errors > 0); } else { TT_CHECK(m.reward_errors == 0); }
            }
            TT_CHECK_OK(r.ctx, tt_metrics_json(&m, &text));
            tt_text_free(&text);
            rig_close(&r);
        }
    }
}
static void count_responses(void *user, const char *question, const char *response, const tt_outcome *outcome) {
    int *count = (int *)user;
    (void)response;
    count[0]++;
    count[1] += outcome->final_right;
    count[2] += question[0] == ' ' && question[2] == 0;
}
TT_TEST(evaluation_is_repeatable) {
    tt_evaluation a, b;
    tt_evaluate_desc d = TT_INIT;
    int count[3] = {0, 0, 0};
    rig r;
    rig_open(&r, 1, NULL);
    d.n_questions = 20;
    d.n_samples = 3;
    d.max_new_tokens = 6;
    d.seed = 4;
    d.on_response = count_responses;
    d.user = count;
    TT_CHECK_OK(r.ctx, tt_evaluate(r.model, r.tokenizer, &r.task, &d, &a));
    TT_CHECK_INT(count[0], 60);
    TT_CHECK_INT(count[2], 60);
    TT_CHECK_INT(a.n, 60);
    TT_CHECK_NEAR(a.accuracy, count[1] / 60.0, 1e-12);
    TT_CHECK(a.mean_length >= 1 && a.mean_length <= 6 && a.stopped_rate <= 1);
    d.max_batch = 7;
    TT_CHECK_OK(r.ctx, tt_evaluate(r.model, r.tokenizer, &r.task, &d, &b));
    TT_CHECK_BYTES(&a, &b, sizeof a);
    d.n_questions = -1;
    TT_CHECK_INT(tt_evaluate(r.model, r.tokenizer, &r.task, &d, &b), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(r.ctx), "n_questions is -1");
    rig_close(&r);
}

/* A tokenizer's file with a BOS: each prompt begins with it, and what the teacher adds does not. */
TT_TEST(prompts_begin_as_the_tokenizers_file_says) {
    rig r;
    tt_step_metrics m = TT_INIT;
    const tt_rollouts *all;
    int32_t bos;
    int i, k;
    rig_open(&r, 1, NULL);
    bos = tt_token_id(r.tokenizer, "\n\n");
    r.tokenizer->before[0] = bos;
    r.tokenizer->n_before = 1;
    r.desc.teacher = &r.teacher;
    r.desc.think.total_steps = 10;
    r.desc.think.separator = " ";
    rig_start(&r);
    TT_REQUIRE(r.trainer != NULL);
    TT_CHECK_OK(r.ctx, tt_trainer_step(r.trainer, &m));
    all = tt_trainer_rollouts(r.trainer);
    TT_CHECK(all->n > 0);
    for (i = 0; i < all->n; i++) {
        const tt_rollout *one = &all->items[i];
        TT_CHECK(one->prompt_length == 4 && one->tokens[0] == bos && one->tokens[1] == tt_token_id(r.tokenizer, "<q>"));
        for (k = one->prompt_length + one->attempt_length; one->guided && k < one->prompt_length + one->response_length; k++) { TT_CHECK(one->tokens[k] != bos); }
    }
    rig_close(&r);
}

TT_MAIN(signs_documents_follow_the_grammar, signs_splits_are_disjoint, signs_judges_responses, signs_words_are_single_tokens, signs_teacher_leads_to_a_right_answer,
        jsonl_rewards_answers, jsonl_with_a_byte_order_mark_and_lines_of_blanks, jsonl_text_with_a_nul_is_refused_by_name, jsonl_errors_name_the_line, trainer_learns, trainer_resumes_bit_for_bit, trainer_resumes_without_a_signal, trainer_threads_do_not_matter,
        trainer_micro_batches_add_up, trainer_shares_prompts, reducer_adds_parts_as_a_tree, reducer_gathers_exactly, trainer_names_wrong_ranks,
        ranks_survive_lost_memory, ranks_give_the_same_bits, ranks_share_an_evaluation, ranks_agree_with_one_process, ranks_resume_with_another_number, trainer_with_reference_and_two_iterations, trainer_with_adapters, trainer_with_teacher,
        trainer_adds_and_logs_rewards, trainer_survives_a_failing_reward, trainer_replaces_groups_of_equal_rewards, trainer_updates_on_mini_batches,
        trainer_mixes_in_off_policy_responses, trainer_saves_what_it_is_given_beside, trainer_takes_any_model_as_teacher, trainer_measures_divergence_on_request,
        trainer_takes_divergence_from_the_reward, trainer_stops_with_a_reason, trainer_has_bnpos_trap_only_under_its_name,
        trainer_errors_name_field_and_value, a_callback_that_fails_without_a_word_is_named, a_step_within_a_step_is_refused, trainer_survives_lost_memory,
        reward_is_of_all_responses_and_own_reward_of_the_students_own,
        what_max_completion_length_cuts_is_counted, a_question_that_is_too_long_is_named_before_training, rewards_of_any_size_train_or_are_left_out, metrics_are_json, evaluation_is_repeatable, prompts_begin_as_the_tokenizers_file_says)
