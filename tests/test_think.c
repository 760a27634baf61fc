/* Chapter 11: the teaching schedule, tags, selection, augmentation and the teacher that is a model. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

/* ---- fixture: a byte-level tokenizer, rollouts of it, a teacher that is a function ---- */
static const char *const specials[] = {"<end>", "<ask>", "<tell>", "<stop>"};
enum { END = 0, ASK = 1, TELL = 2, STOP = 3 };
static tt_status augment(tt_rollouts *all, const tt_teacher *teacher, const tt_tokenizer *tokenizer, const tt_think_config *c, const tt_grpo_config *grpo, int step, tt_think_metrics *m) {
    tt_augment how = TT_INIT;
    how.teacher = teacher;
    how.tokenizer = tokenizer;
    how.end_token = END;
    how.max_completion_length = tt_grpo_resolve(grpo).max_completion_length;
    how.step = step;
    return tt_think_augment(all, &how, c, m);
}

static tt_tokenizer *bytes_tokenizer(tt_context *ctx) {
    tt_tokenizer_desc desc = TT_INIT;
    desc.pretokenizer = TT_PRETOKENIZE_GPT2;
    desc.vocab_size = 300;
    desc.all_bytes = 1;
    desc.special_tokens = specials;
    desc.n_special_tokens = 4;
    return tt_tokenizer_words(ctx, &desc, NULL, 0);
}
/* One response of each group per text; "$" stands for the end token. Prompts are "Q". */
static tt_status make_rollouts(tt_context *ctx, const tt_tokenizer *tokenizer, int n_groups, int size, const char *const *texts, tt_rollouts *out) {
    tt_request requests[8];
    tt_completion items[32];
    tt_ids ids[32], prompt = TT_INIT;
    tt_completions all;
    float zeros[64];
    tt_status status;
    int i;
    memset(requests, 0, sizeof requests);
    memset(items, 0, sizeof items);
    memset(ids, 0, sizeof ids);
    memset(zeros, 0, sizeof zeros);
    prompt.ctx = ctx;
    status = tt_encode(tokenizer, "Q", 1, TT_SPECIAL_TEXT, &prompt);
    for (i = 0; i < n_groups && status == TT_OK; i++) {
        requests[i].prompt = prompt.data;
        requests[i].prompt_length = 1;
        requests[i].id = 100 + (uint64_t)i;
    }
    for (i = 0; i < n_groups * size && status == TT_OK; i++) {
        static const int32_t end = END;
        const char *at;
        ids[i].ctx = ctx;
        for (at = texts[i]; *at && status == TT_OK; at++) {
            status = *at == '$' ? tt_ids_append(&ids[i], &end, 1) : tt_encode(tokenizer, at, 1, TT_SPECIAL_TEXT, &ids[i]);
        }
        items[i].request = i / size;
        items[i].sample = i % size;
        items[i].length = (int)ids[i].size;
        items[i].tokens = ids[i].data;
        items[i].logprobs = zeros;
    }
    all.ctx = ctx;
    all.n = n_groups * size;
    all.items = items;
    all.n_tokens = 0;
    if (status == TT_OK) { status = tt_rollouts_create(ctx, requests, n_groups, &all, END, out); }
    tt_ids_free(&prompt);
    for (i = 0; i < n_groups * size; i++) { if (ids[i].ctx) { tt_ids_free(&ids[i]); } }
    return status;
}
typedef struct script { int calls, n; char asked[512]; tt_status answer; const char *reason, *phrase; } script;
static tt_status scripted(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    script *s = (script *)user;
    int i;
    s->calls++;
    s->n = n;
    for (i = 0; i < n; i++) {
        size_t used = strlen(s->asked);
        tt_status status;
        snprintf(s->asked + used, sizeof s->asked - used, "[%s|%s]", attempts[i].question, attempts[i].response);
        status = tt_text_format(&out[i].reason, "%s", s->reason);
        if (status == TT_OK) { status = tt_text_format(&out[i].phrase, "%s", s->phrase); }
        if (status == TT_OK) { status = tt_text_format(&out[i].opinion, "incorrect"); }
        if (status != TT_OK) { return status; }
    }
    return s->answer;
}
static tt_teacher teacher_of(script *s) {
    tt_teacher t;
    memset(s, 0, sizeof *s);
    s->reason = "why";
    s->phrase = "so 4";
    t.feedback = scripted;
    t.user = s;
    return t;
}
static tt_think_config config_of(float pct) {
    tt_think_config c = TT_INIT;
    c.init_pct = pct;
    c.min_pct = 0.01f;
    c.total_steps = 30;
    return c;
}
static void check_response(const tt_rollouts *all, int index, const tt_tokenizer *tokenizer, const char *want) {
    tt_text text = TT_INIT;
    const tt_rollout *r = &all->items[index];
    text.ctx = all->ctx;
    TT_CHECK_OK(all->ctx, tt_decode(tokenizer, r->tokens + r->prompt_length, (size_t)r->response_length, 0, &text));
    TT_CHECK_STR(text.data, want);
    tt_text_free(&text);
}

/* ---- schedule ---- */
TT_TEST(the_share_falls_as_the_schedule_says) {
    tt_think_config c = TT_INIT;
    c.total_steps = 90;                          /* reached after 30 steps */
    TT_CHECK_NEAR(tt_think_pct(&c, 0), 0.1, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 10), 0.1 - 0.09 / 3, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 30), 0.01, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 89), 0.01, 1e-7);
    c.schedule = TT_THINK_CONSTANT;
    TT_CHECK_NEAR(tt_think_pct(&c, 89), 0.1, 1e-7);
    c.schedule = TT_THINK_COSINE;
    TT_CHECK_NEAR(tt_think_pct(&c, 15), 0.055, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 10), 0.01 + 0.045 * 1.5, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 40), 0.01, 1e-7);
    c.schedule = TT_THINK_EXP;
    TT_CHECK_NEAR(tt_think_pct(&c, 15), sqrt(0.1 * 0.01), 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 31), 0.01, 1e-7);
    c.schedule = TT_THINK_LINEAR;
    c.total_steps = 2;                           /* max(1, floor(T / 3)) = 1 */
    TT_CHECK_NEAR(tt_think_pct(&c, 0), 0.1, 1e-7);
    TT_CHECK_NEAR(tt_think_pct(&c, 1), 0.01, 1e-7);
}
TT_TEST(the_teacher_leaves_for_good) {
    tt_think_config c = TT_INIT;
    int step, off = -1, type;
    c.total_steps = 90;
    for (type = TT_THINK_LINEAR; type <= TT_THINK_EXP; type++) {
        c.schedule = (tt_think_schedule)type;
        for (off = -1, step = 0; step < 90; step++) {
            int active = tt_think_active(&c, step);
            TT_CHECK_INT(active, tt_think_pct(&c, step) > (double)0.05f + 0.01);
            if (!active && off < 0) { off = step; }
            TT_CHECK(off < 0 || !active);
        }
        TT_CHECK(type == TT_THINK_CONSTANT ? off == -1 : off > 0);
        if (type == TT_THINK_LINEAR) { TT_CHECK_INT(off, 14); }      /* 0.1 - 0.003 t <= 0.06 */
    }
    c.schedule = TT_THINK_LINEAR;
    c.off_eps = -1;
    TT_CHECK(tt_think_active(&c, 89));
}

/* ---- tags ---- */
static void check_tag(const char *text, int found, const char *want) {
    const char *begin;
    size_t length;
    char got[64];
    TT_CHECK_INT(tt_think_tag(text, strlen(text), "reason", &begin, &length), found);
    TT_CHECK(length < sizeof got && begin >= text && begin + length <= text + strlen(text));
    memcpy(got, begin, length);
    got[length] = 0;
    TT_CHECK_STR(got, want);
}
TT_TEST(the_last_closed_tag_counts) {
    const char *begin;
    size_t length;
    check_tag("<reason>one</reason> <reason>two</reason>", 1, "two");
    check_tag("<reason>one</reason> <reason>two", 1, "one");
    check_tag("<reason>outer <reason>inner</reason>", 1, "inner");
    check_tag("<reason> \n spaced \t\n</reason>", 1, " spaced");       /* one space before the first word stays */
    check_tag("<reason>\nline</reason>", 1, "line");
    check_tag("<reason></reason>", 1, "");
    check_tag("<reason>   </reason>", 1, "");
    check_tag("no tag", 0, "");
    check_tag("", 0, "");
    check_tag("</reason><reason>", 0, "");
    check_tag("<reason", 0, "");
    check_tag("<phrase>x</phrase>", 0, "");
    TT_CHECK_INT(tt_think_tag(NULL, 0, "reason", &begin, &length), 0);
    TT_CHECK_INT(tt_think_tag("<reason>a</reason>", 12, "reason", &begin, &length), 0);   /* the text ends before </reason> */
}

static void check_closed(tt_context *ctx, const char *said, const char *want) {
    tt_text text = TT_INIT;
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_text_append(&text, said, strlen(said)));
    TT_CHECK_OK(ctx, tti_close_tag(&text));
    TT_CHECK_STR(text.data, want);
    tt_text_free(&text);
}
TT_TEST(the_tag_in_which_a_text_ends_can_be_closed) {
    tt_context *ctx = tt_create(NULL);
    check_closed(ctx, "<reason>one", "<reason>one</reason>");
    check_closed(ctx, "<opinion>wrong</opinion> <reason>one</reason> <phrase>two", "<opinion>wrong</opinion> <reason>one</reason> <phrase>two</phrase>");
    check_closed(ctx, "<reason>one <phrase>two", "<reason>one <phrase>two</phrase>");        /* the other one stays open, so missing */
    check_closed(ctx, "<reason>one</reason> <reason>two", "<reason>one</reason> <reason>two</reason>");
    check_closed(ctx, "<phrase>one</phrase>", "<phrase>one</phrase>");
    check_closed(ctx, "</phrase> <phrase>", "</phrase> <phrase></phrase>");
    check_closed(ctx, "no tag", "no tag");
    check_closed(ctx, "", "");
    tt_destroy(ctx);
}

/* ---- augmentation ---- */
TT_TEST(a_guided_response_is_attempt_reason_phrase) {
    static const char *const texts[2] = {"ab$", "cd"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_rollouts all;
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    tt_think_metrics m;
    const tt_rollout *r;
    int t;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);
    all.items[0].reward = 0.25f;
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, 0, &m));
    TT_CHECK_STR(s.asked, "[Q|ab]");                 /* without its end token; only stopped responses are eligible */
    check_response(&all, 0, tokenizer, "ab\n\nwhy\n\nso 4<end>");
    check_response(&all, 1, tokenizer, "cd");
    r = &all.items[0];
    TT_CHECK(r->guided && r->stopped && r->attempt_length == 2 && r->attempt_reward == 0.25f);
    TT_CHECK(!all.items[1].guided && all.items[1].kind[all.items[1].prompt_length] == TT_KIND_STUDENT);
    for (t = 0; t < r->response_length; t++) {
        TT_CHECK_INT(r->kind[r->prompt_length + t], t >= 2 ? TT_KIND_TEACHER : TT_KIND_GUIDED);
        TT_CHECK_INT(isnan(r->sampling_logprobs[t]) != 0, t >= 2);
    }
    TT_CHECK_INT(m.n_guided, 1);
    TT_CHECK_INT(m.n_eligible, 1);
    TT_CHECK_NEAR(m.pct, 1, 0);
    TT_CHECK_NEAR(m.teacher_tokens, r->response_length - 2, 0);      /* not told: what is appended */
    tt_rollouts_free(&all);

    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);      /* only the appended tokens are shaped */
    c.mask = TT_MASK_APPENDED;
    c.separator = "//";
    s.phrase = "<end>";                              /* special tokens of a feedback are plain text */
    TT_CHECK_OK(ctx, tt_rollouts_question(&all, 0, "2 + 2 ?"));
    s.asked[0] = 0;
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL));
    TT_CHECK_STR(s.asked, "[2 + 2 ?|ab]");
    check_response(&all, 0, tokenizer, "ab//why//<end><end>");
    for (t = 0; t < all.items[0].response_length; t++) { TT_CHECK_INT(all.items[0].kind[all.items[0].prompt_length + t], t >= 2 ? TT_KIND_TEACHER : TT_KIND_STUDENT); }
    TT_CHECK(all.items[0].stopped);
    tt_rollouts_free(&all);

    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);      /* cut at the response limit: no end token */
    grpo.max_completion_length = 9;
    c.separator = NULL;
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL));
    check_response(&all, 0, tokenizer, "ab\n\nwhy\n\n");
    TT_CHECK_INT(all.items[0].response_length, 9);
    TT_CHECK(!all.items[0].stopped && all.items[0].guided);
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
static unsigned chosen_of(const tt_rollouts *all) {
    unsigned bits = 0;
    int i;
    for (i = 0; i < all->n; i++) { bits |= (unsigned)all->items[i].guided << i; }
    return bits;
}
static unsigned choose(tt_context *ctx, const tt_tokenizer *tokenizer, int n_groups, int size, const char *const *texts, float pct, uint64_t seed, int step, tt_think_metrics *m) {
    tt_rollouts all;
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_think_config c = config_of(pct);
    tt_grpo_config grpo = TT_INIT;
    unsigned bits;
    c.seed = seed;
    c.schedule = TT_THINK_CONSTANT;
    if (!TT_CHECK_OK(ctx, make_rollouts(ctx, tokenizer, n_groups, size, texts, &all))) { return 0; }
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, step, m));
    TT_CHECK_INT(s.calls, m->n_guided > 0);          /* all at once */
    TT_CHECK_INT(s.n, m->n_guided);
    bits = chosen_of(&all);
    tt_rollouts_free(&all);
    return bits;
}
static int count_bits(unsigned bits) { int n = 0; for (; bits; bits &= bits - 1) { n++; } return n; }
TT_TEST(selection_takes_a_share_of_the_stopped_responses) {
    static const char *const texts[24] = {"a$", "b$", "c$", "d$", "e$", "f$", "g$", "h$",      /* 8 eligible         */
                                          "a$", "b", "c$$", "d", "$", "f$g", "g", "h",         /* only the first one */
                                          "a", "b", "c", "d", "e", "f", "g", "h"};             /* none               */
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_think_metrics m;
    unsigned seen = 0, bits, first = choose(ctx, tokenizer, 3, 8, texts, 0.25f, 1, 0, &m);
    int seed, different = 0;
    TT_CHECK_INT(m.n_eligible, 9);
    TT_CHECK_INT(m.n_guided, 3);
    TT_CHECK_INT(count_bits(first & 0xff), 2);       /* floor(8 * 0.25) */
    TT_CHECK_INT(first >> 8, 1);                     /* max(1, floor(1 * 0.25)), and none of none */
    TT_CHECK_INT(choose(ctx, tokenizer, 3, 8, texts, 0.25f, 1, 0, &m), first);
    TT_CHECK_INT(choose(ctx, tokenizer, 1, 8, texts, 0.25f, 1, 0, &m), first & 0xff);      /* whatever the other groups */
    for (seed = 0; seed < 40; seed++) {
        bits = choose(ctx, tokenizer, 1, 8, texts, 0.25f, (uint64_t)seed, seed % 3, &m);
        TT_CHECK_INT(count_bits(bits), 2);
        different += bits != (first & 0xff);
        seen |= bits;
    }
    TT_CHECK_INT(seen, 0xff);
    TT_CHECK(different > 20);
    TT_CHECK(choose(ctx, tokenizer, 1, 8, texts, 0.25f, 1, 1, &m) != (first & 0xff) || choose(ctx, tokenizer, 1, 8, texts, 0.25f, 1, 2, &m) != (first & 0xff));
    TT_CHECK_INT(count_bits(choose(ctx, tokenizer, 1, 8, texts, 0.99f, 1, 0, &m)), 7);     /* floor, not rounded */
    TT_CHECK_INT(choose(ctx, tokenizer, 1, 8, texts, 1, 1, 0, &m), 0xff);
    TT_CHECK_INT(choose(ctx, tokenizer, 1, 8, texts, 0.01f, 1, 0, &m) != 0, 1);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(the_teacher_leaves_off_policy_responses_alone) {
    static const char *const texts[2] = {"ab$", "cd$"};
    static const int32_t given[2] = {ASK, END};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_rollouts all;
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    tt_think_metrics m;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);
    TT_CHECK_OK(ctx, tt_rollout_off_policy(&all, 0, given, 2, END));
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, 0, &m));
    TT_CHECK_INT(m.n_eligible, 1);
    TT_CHECK_INT(chosen_of(&all), 2);
    tt_think_score(&all, &m);
    TT_CHECK_NEAR(m.guided_share, 0.5, 0);
    TT_CHECK_NEAR(m.own_reward, 0, 0);
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(a_failing_teacher_and_bad_settings_are_reported) {
    static const char *const texts[2] = {"ab$", "cd$"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_rollouts all;
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);
    s.answer = TT_ERR_STOP;
    TT_CHECK_INT(augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL), TT_ERR_STOP);
    TT_CHECK_CONTAINS(tt_error(ctx), "the teacher failed: stopped by a callback");
    TT_CHECK_INT(chosen_of(&all), 0);
    tt_error_clear(ctx);
    s.answer = TT_OK;
    c.total_steps = 0;
    TT_CHECK_INT(augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "total_steps is 0, expected >= 1");
    c = config_of(1.5f);
    TT_CHECK_INT(augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "init_pct is 1.5 and min_pct 0.01");
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
/* ---- teachers that are not well ---- */
typedef struct babble { const char *text; size_t size; int n_tokens, lent; tt_status answer; } babble;
static tt_status babbled(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    const babble *b = (const babble *)user;
    tt_status status = TT_OK;
    int i;
    (void)attempts;
    for (i = 0; i < n && status == TT_OK; i++) {
        out[i].n_tokens = b->n_tokens;
        if (b->lent) {
            out[i].reason.data = out[i].phrase.data = (char *)(uintptr_t)b->text;
            out[i].reason.size = out[i].phrase.size = b->size;
        } else if (b->text) { status = tt_text_append(&out[i].reason, b->text, b->size); }
    }
    return status == TT_OK ? b->answer : status;
}
/* What a group of two becomes when such a teacher reads it. */
static tt_status listen(tt_context *ctx, const tt_tokenizer *tokenizer, const babble *b, int limit, tt_think_metrics *m, tt_rollouts *all) {
    static const char *const texts[2] = {"ab$", "cd$"};
    tt_teacher teacher;
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    tt_status status = make_rollouts(ctx, tokenizer, 1, 2, texts, all);
    teacher.feedback = b ? babbled : NULL;
    teacher.user = (void *)(uintptr_t)b;
    grpo.max_completion_length = limit;
    return status == TT_OK ? augment(all, &teacher, tokenizer, &c, &grpo, 0, m) : status;
}
TT_TEST(feedback_that_is_cut_is_counted_with_the_length_that_would_do) {
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    static const babble b = {"0123456789", 10, 0, 0, TT_OK};
    tt_think_metrics m = TT_INIT;
    tt_rollouts all;
    int limit;
    for (limit = 16; limit <= 18; limit++) {      /* 2 + 2 + 10 + 2 + 1 */
        TT_CHECK_OK(ctx, listen(ctx, tokenizer, &b, limit, &m, &all));
        TT_CHECK_NEAR(m.n_cut, limit < 17 ? 2 : 0, 0);
        TT_CHECK_INT(m.longest_guided, 17);
        TT_CHECK_INT(all.items[0].stopped, limit >= 17);
        tt_rollouts_free(&all);
    }
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(a_teacher_may_say_nothing_or_lend_its_text) {
    static const babble silent = {NULL, 7, 0, 1, TT_OK}, lent = {"why", 3, -5, 1, TT_OK};
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    tt_tokenizer *tokenizer;
    tt_think_metrics m = TT_INIT;
    tt_rollouts all;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    tokenizer = bytes_tokenizer(ctx);
    TT_CHECK_OK(ctx, listen(ctx, tokenizer, &silent, 0, &m, &all));
    check_response(&all, 0, tokenizer, "ab\n\n\n\n<end>");
    tt_rollouts_free(&all);
    TT_CHECK_OK(ctx, listen(ctx, tokenizer, &lent, 0, &m, &all));
    check_response(&all, 1, tokenizer, "cd\n\nwhy\n\nwhy<end>");
    TT_CHECK_NEAR(m.teacher_tokens, 22, 0);       /* -5 is no count: those that stand there */
    tt_rollouts_free(&all);
    TT_CHECK_INT(listen(ctx, tokenizer, NULL, 0, &m, &all), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "teacher.feedback is NULL");
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}
TT_TEST(feedback_of_any_bytes_and_any_length_is_read) {
    static const char odd[] = "\xff\xfe\xc3 \xed\xa0\x80 \0 <end> \xf4\x90\x80\x80", *const fill[3] = {"a", "\xff", "word 12 \n"};
    const size_t size = (size_t)(tt_test_exhaustive() ? 10 : 1) << 20;
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    babble b = {odd, sizeof odd - 1, INT_MAX, 0, TT_OK};
    char *text = (char *)malloc(size);
    tt_think_metrics m = TT_INIT;
    tt_rollouts all;
    size_t k, i;
    TT_REQUIRE(text != NULL);
    TT_CHECK_OK(ctx, listen(ctx, tokenizer, &b, 0, &m, &all));
    TT_CHECK_INT(all.items[0].stopped, 1);        /* its "<end>" is text */
    TT_CHECK_INT(all.items[0].response_length, 2 + 2 + (int)sizeof odd - 1 + 2 + 1);
    tt_rollouts_free(&all);
    for (k = 0; k < 3; k++) {
        for (i = 0; i < size; i++) { text[i] = fill[k][i % strlen(fill[k])]; }
        b.text = text;
        b.size = size;
        TT_CHECK_OK(ctx, listen(ctx, tokenizer, &b, 32, &m, &all));
        TT_CHECK_NEAR(m.n_cut, 2, 0);
        TT_CHECK_INT(m.longest_guided, 2 + 2 + (int)size + 2 + 1);
        TT_CHECK_INT(all.items[0].response_length, 32);
        TT_CHECK_INT(all.items[0].stopped, 0);
        tt_rollouts_free(&all);
    }
    free(text);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(a_failing_teacher_is_not_blamed_for_an_older_error) {
    static const babble b = {NULL, 0, 0, 0, TT_ERR_IO};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_rollouts all;
    tt_fail(ctx, TT_ERR_FILE, "an older error");
    TT_CHECK_INT(listen(ctx, tokenizer, &b, 0, NULL, &all), TT_ERR_IO);
    TT_CHECK_CONTAINS(tt_error(ctx), "the teacher failed");
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
/* ---- rollouts that are not there ---- */
TT_TEST(empty_rollouts_are_an_error_or_nothing) {
    static const char *const texts[2] = {"$", "$"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    tt_think_metrics m = TT_INIT;
    tt_grpo_metrics g = TT_INIT;
    tt_rollouts none = TT_INIT, all;
    script s;
    tt_teacher teacher = teacher_of(&s);
    none.ctx = ctx;
    TT_CHECK_INT(tt_grpo_advantages(&none, &grpo, NULL, &g), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "number of rollouts is 0");
    tt_error_clear(ctx);
    TT_CHECK_OK(ctx, augment(&none, &teacher, tokenizer, &c, &grpo, 0, &m));
    TT_CHECK(m.n_guided == 0 && s.calls == 0);
    tt_think_score(&none, &m);
    TT_CHECK(m.own_reward == 0 && m.guided_share == 0);
    TT_CHECK(tt_rollouts_batch(ctx, &none, NULL, 0) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "n_sequences is 0");
    tt_step_reset(ctx);
    tt_rollouts_free(&none);
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);      /* an end token and nothing before it */
    TT_CHECK_OK(ctx, augment(&all, &teacher, tokenizer, &c, &grpo, 0, &m));
    TT_CHECK(m.n_eligible == 0 && m.n_guided == 0 && s.calls == 0);
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(rates_compare_with_the_attempt) {
    static const char *const texts[6] = {"a$", "b$", "c$", "d$", "e$", "f$"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_rollouts all;
    tt_think_metrics m = TT_INIT;
    int i;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 6, texts, &all) == TT_OK);
    for (i = 0; i < 4; i++) {
        all.items[i].guided = 1;
        all.items[i].attempt_reward = i == 3;            /* three were wrong, one was right */
        all.items[i].reward = all.items[i].rewards[0] = i < 2;   /* two rescued; the right one is spoiled */
    }
    all.items[4].reward = 1;
    tt_think_score(&all, &m);
    TT_CHECK_NEAR(m.guided_share, 4.0 / 6, 1e-12);
    TT_CHECK_NEAR(m.teacher_accuracy, 0.5, 1e-12);
    TT_CHECK_NEAR(m.rescue_rate, 2.0 / 3, 1e-12);
    TT_CHECK_NEAR(m.spoil_rate, 1, 1e-12);
    TT_CHECK_NEAR(m.guided_reward, 0.5, 1e-12);
    TT_CHECK_NEAR(m.own_reward, 0.5, 1e-12);
    tt_rollouts_free(&all);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}

/* ---- a model as teacher ---- */
static tt_model *tiny_model(tt_context *ctx, const tt_tokenizer *tokenizer) {
    tt_model_config config = TT_INIT;
    config.vocab_size = tt_vocab_size(tokenizer);
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    config.max_position_embeddings = 64;
    return tt_model_create(ctx, &config, 5);
}
TT_TEST(a_model_teacher_reads_its_template_and_decodes_greedily) {
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *model = tiny_model(ctx, tokenizer);
    tt_teacher_prompt prompt = TT_INIT;
    tt_model_teacher *built;
    tt_teacher teacher;
    tt_attempt attempts[2];
    tt_feedback out[2], again[2];
    tt_ids ids = TT_INIT, want = TT_INIT;
    static const int32_t ask = ASK, tell = TELL;
    int i;
    memset(attempts, 0, sizeof attempts);
    memset(out, 0, sizeof out);
    memset(again, 0, sizeof again);
    TT_REQUIRE(model != NULL);
    prompt.stop_token = "<stop>";
    prompt.system = "S";
    prompt.prompt_template = "<ask>{question}<tell>{response}:";
    prompt.max_new_tokens = 12;
    built = tt_model_teacher_create(model, tokenizer, &prompt);
    TT_REQUIRE(built != NULL);
    teacher = tt_teacher_model(built);
    attempts[0].question = "q<end>";
    attempts[0].response = "r{question}";
    attempts[1].question = attempts[1].response = "";
    for (i = 0; i < 2; i++) {
        attempts[i].question_size = strlen(attempts[i].question);
        attempts[i].response_size = strlen(attempts[i].response);
        out[i].reason.ctx = out[i].phrase.ctx = out[i].opinion.ctx = ctx;
        again[i].reason.ctx = again[i].phrase.ctx = again[i].opinion.ctx = ctx;
    }
    ids.ctx = want.ctx = ctx;
    TT_CHECK_OK(ctx, tti_teacher_prompt(built, &attempts[0], &ids));
    TT_CHECK_OK(ctx, tt_encode(tokenizer, "S", 1, TT_SPECIAL_TEXT, &want));
    TT_CHECK_OK(ctx, tt_ids_append(&want, &ask, 1));
    TT_CHECK_OK(ctx, tt_encode(tokenizer, "q<end>", 6, TT_SPECIAL_TEXT, &want));
    TT_CHECK_OK(ctx, tt_ids_append(&want, &tell, 1));
    TT_CHECK_OK(ctx, tt_encode(tokenizer, "r{question}:", 12, TT_SPECIAL_TEXT, &want));
    TT_CHECK_INT(ids.size, want.size);
    TT_CHECK_BYTES(ids.data, want.data, want.size * sizeof(int32_t));
    tokenizer->before[0] = END;                           /* a file with a BOS, whose place is before the system text */
    tokenizer->n_before = 1;
    ids.size = 0;
    TT_CHECK_OK(ctx, tti_teacher_prompt(built, &attempts[0], &ids));
    TT_CHECK_INT(ids.size, want.size + 1);
    TT_CHECK_INT(ids.data[0], END);
    TT_CHECK_BYTES(ids.data + 1, want.data, want.size * sizeof(int32_t));
    tokenizer->n_before = 0;
    TT_CHECK_OK(ctx, teacher.feedback(teacher.user, attempts, 2, out));
    TT_CHECK_OK(ctx, teacher.feedback(teacher.user, attempts, 2, again));
    for (i = 0; i < 2; i++) {
        TT_CHECK_INT(out[i].reason.size, again[i].reason.size);
        TT_CHECK_INT(out[i].phrase.size, 0);              /* an untrained model writes no tags: empty texts */
        tt_text_free(&out[i].reason);
        tt_text_free(&out[i].phrase);
        tt_text_free(&out[i].opinion);
        tt_text_free(&again[i].reason);
        tt_text_free(&again[i].phrase);
        tt_text_free(&again[i].opinion);
    }
    attempts[0].response = "0123456789012345678901234567890123456789012345678901234567890123456789";
    attempts[0].response_size = 70;
    TT_CHECK_INT(teacher.feedback(teacher.user, attempts, 1, out), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "its prompt has 80 tokens, expected fewer than max_position_embeddings 64");
    memset(out, 0, sizeof out);                           /* beside one that fits, it only goes without feedback */
    for (i = 0; i < 2; i++) { out[i].reason.ctx = out[i].phrase.ctx = out[i].opinion.ctx = ctx; }
    tt_error_clear(ctx);
    TT_CHECK_OK(ctx, teacher.feedback(teacher.user, attempts, 2, out));
    TT_CHECK(out[0].n_tokens == 0 && out[1].n_tokens > 0);
    for (i = 0; i < 2; i++) {
        tt_text_free(&out[i].reason);
        tt_text_free(&out[i].phrase);
        tt_text_free(&out[i].opinion);
    }
    tt_ids_free(&ids);
    tt_ids_free(&want);
    tt_model_teacher_destroy(built);
    prompt.stop_token = "<nothing>";
    TT_CHECK(tt_model_teacher_create(model, tokenizer, &prompt) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "stop_token is \"<nothing>\"");
    prompt.stop_token = "<stop>";
    prompt.prompt_template = "{question} only";
    TT_CHECK(tt_model_teacher_create(model, tokenizer, &prompt) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "expected {question} and {response} in it");
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
/* ---- worked examples from a file ---- */
static tt_model_teacher *teacher_from(tt_model *model, const tt_tokenizer *tokenizer, const char *text, const char *pattern) {
    const char *path = tt_test_tmp("examples.txt");
    tt_teacher_prompt prompt = TT_INIT;
    if (tt_file_write(tt_model_context(model), path, text, strlen(text)) != TT_OK) { return NULL; }
    prompt.stop_token = "<stop>";
    prompt.system = "S.";
    prompt.examples_path = path;
    prompt.example_template = pattern;
    return tt_model_teacher_create(model, tokenizer, &prompt);
}
static void check_prompt(tt_model *model, const tt_tokenizer *tokenizer, const char *text, const char *pattern, const char *want) {
    tt_model_teacher *built = teacher_from(model, tokenizer, text, pattern);
    tt_text out = TT_INIT;
    out.ctx = tt_model_context(model);
    if (TT_CHECK(built != NULL)) {
        TT_CHECK_OK(out.ctx, tt_teacher_prompt_text(built, "q", "r", &out));
        TT_CHECK_STR(out.data, want);
    } else { printf("  %s\n", tt_error(out.ctx)); }
    tt_text_free(&out);
    tt_model_teacher_destroy(built);
}
TT_TEST(worked_examples_come_from_a_text_file) {
    static const char asked[] = "Question:\nq\n\nResponse:\nr";
    static const struct { const char *text, *error; } broken[] = {
        {"notes only\n", "examples.txt: no [section] in it"},
        {"[self-doubt]\nQuestion:\na\n", "line 1: section [self-doubt], expected [system], [self-agreement]"},
        {"\n[self-conflict]\nQuestion:\na\nResponse:\nb\n", "section [self-conflict] has no Feedback:"},
        {"[self-conflict]\nResponse:\nb\nFeedback:\nc\n[system]\nx\n", "line 6: section [self-conflict] has no Question:"},
        {"[system]\n \n", "section [system] has no text"}
    };
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *model = tiny_model(ctx, tokenizer);
    char want[512];
    size_t i;
    snprintf(want, sizeof want, "S.I am.\nTwo lines.\n\nQuestion:\n1 + 1\n[2, 3]\n\nResponse:\n<end>\n\n<reason>x</reason>\n\n%s", asked);
    check_prompt(model, tokenizer, "notes\n[system]\n\nI am.\nTwo lines.\n\n[self-critique]\nQuestion:\n 1 + 1\n[2, 3]\nResponse:\n\n<end>\nFeedback:\n<reason>x</reason>\n\n", NULL, want);
    snprintf(want, sizeof want, "S.(a|b|c)(d|e|f)%s", asked);
    check_prompt(model, tokenizer, "[self-agreement]\r\nQuestion:\r\na\r\nResponse:\r\nb\r\nFeedback:\r\nc\r\n[self-consultation]\nFeedback:\nf\nQuestion:\nd\nResponse:\ne",
                 "({question}|{response}|{feedback})", want);
    for (i = 0; i < sizeof broken / sizeof *broken; i++) {
        TT_CHECK(teacher_from(model, tokenizer, broken[i].text, NULL) == NULL);
        TT_CHECK_CONTAINS(tt_error(ctx), broken[i].error);
    }
    {   /* special tokens count in feedback, which may hold tags, not in question and response */
        static const int32_t tell[1] = {TELL};
        tt_model_teacher *built = teacher_from(model, tokenizer, "[self-conflict]\nQuestion:\n<tell>\nResponse:\n<tell>\nFeedback:\n<tell>\n", "{question}{response}{feedback}");
        tt_attempt none = TT_INIT;
        tt_ids ids = TT_INIT;
        int special = 0;
        TT_REQUIRE(built != NULL);
        none.question = none.response = "";
        ids.ctx = ctx;
        TT_CHECK_OK(ctx, tti_teacher_prompt(built, &none, &ids));
        for (i = 0; i < ids.size; i++) { special += ids.data[i] == tell[0]; }
        TT_CHECK_INT(special, 1);
        tt_ids_free(&ids);
        tt_model_teacher_destroy(built);
    }
    {   /* the file that stands beside the examples */
        tt_teacher_prompt prompt = TT_INIT;
        tt_model_teacher *built;
        tt_text out = TT_INIT;
        out.ctx = ctx;
        prompt.stop_token = "<stop>";
        prompt.examples_path = "examples/teacher.txt";
        built = tt_model_teacher_create(model, tokenizer, &prompt);
        if (!TT_CHECK(built != NULL)) { printf("  %s\n", tt_error(ctx)); }
        TT_CHECK_OK(ctx, tt_teacher_prompt_text(built, "q", "r", &out));
        TT_CHECK_CONTAINS(out.data, "<phrase>So Saturday gives 30 pages, and 75 + 30 = 105. #### 105</phrase>\n\nQuestion:\nA taxi");
        TT_CHECK(strstr(out.data, "Worked examples for") == NULL && strstr(out.data, "[self") == NULL);
        tt_text_free(&out);
        tt_model_teacher_destroy(built);
        prompt.examples_path = "build/tmp/no such file";
        TT_CHECK(tt_model_teacher_create(model, tokenizer, &prompt) == NULL);
        TT_CHECK_INT(tt_error_status(ctx), TT_ERR_IO);
    }
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(a_teacher_follows_its_student) {
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *student = tiny_model(ctx, tokenizer), *teacher = tt_model_copy(student);
    tt_model_config other = *tt_model_config_get(student);
    tt_tensor *p = tt_model_param(student, 1), *q = tt_model_param(teacher, 1);
    float before = TT_F(q)[3];
    tt_test_write(ctx, (float *)p->data + 3, before + 1);
    TT_CHECK_OK(ctx, tt_teacher_follow(teacher, student, 0.75f));
    TT_CHECK_NEAR(TT_F(q)[3], before + 0.25f, 1e-6);
    TT_CHECK_NEAR(TT_F(q)[4], TT_F(p)[4], 1e-6);
    TT_CHECK_OK(ctx, tt_teacher_follow(teacher, student, 1));
    TT_CHECK_NEAR(TT_F(q)[3], before + 0.25f, 1e-6);
    TT_CHECK_OK(ctx, tt_teacher_follow(teacher, student, 0));
    TT_CHECK(tt_test_same(q, p));
    TT_CHECK_INT(tt_teacher_follow(teacher, student, 1.5f), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "decay is 1.5");
    TT_CHECK_INT(tt_teacher_follow(teacher, teacher, 0.5f), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "the teacher is the student itself");
    tt_model_destroy(teacher);
    other.vocab_size++;
    teacher = tt_model_create(ctx, &other, 1);
    TT_CHECK_INT(tt_teacher_follow(teacher, student, 0.5f), TT_ERR_SHAPE);
    tt_model_destroy(teacher);
    tt_model_destroy(student);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(tagged_texts_reach_the_feedback) {
    static const char written[] = "x <opinion>correct</opinion> <reason>a</reason> <reason>b c</reason><phrase> d </phrase>";
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model_teacher t;
    tt_completion c;
    tt_ids ids = TT_INIT;
    tt_text scratch = TT_INIT;
    tt_feedback out;
    memset(&t, 0, sizeof t);
    memset(&c, 0, sizeof c);
    memset(&out, 0, sizeof out);
    t.tokenizer = tokenizer;
    ids.ctx = scratch.ctx = out.reason.ctx = out.phrase.ctx = out.opinion.ctx = ctx;
    TT_CHECK_OK(ctx, tt_encode(tokenizer, written, sizeof written - 1, TT_SPECIAL_TEXT, &ids));
    c.tokens = ids.data;
    c.length = (int)ids.size;
    TT_CHECK_OK(ctx, tti_feedback_read(&t, &c, &scratch, &out));
    TT_CHECK_STR(out.reason.data, "b c");
    TT_CHECK_STR(out.phrase.data, " d");
    TT_CHECK_STR(out.opinion.data, "correct");
    tt_text_free(&out.reason);
    tt_text_free(&out.phrase);
    tt_text_free(&out.opinion);
    tt_text_free(&scratch);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}

/* ---- refinement: the student reads question, attempt and feedback, and answers anew ---- */
static tt_augment refiner(const tt_teacher *teacher, const tt_tokenizer *tokenizer, tt_model *student) {
    tt_augment how = TT_INIT;
    how.teacher = teacher;
    how.tokenizer = tokenizer;
    how.end_token = END;
    how.max_completion_length = 12;
    how.student = student;
    return how;
}
static tt_think_config refinement(float pct) {
    tt_think_config c = config_of(pct);
    c.schedule = TT_THINK_CONSTANT;
    c.refine = "<ask>{question}|{response}|{reason}|{phrase}<tell>";
    return c;
}
TT_TEST(a_new_answer_joins_the_group_and_the_attempt_stays) {
    static const char *const texts[] = {"1$", "2$", "3$", "4$", "5$", "6", "7$", "8$"};
    static const float shares[] = {0.01f, 0.5f, 1};
    static const int joined[] = {1, 2, 2};             /* of 4, at most half */
    int k, i, t;
    for (k = 0; k < 3; k++) {
        tt_context *ctx = tt_create(NULL);
        tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
        tt_model *model = tiny_model(ctx, tokenizer);
        script s;
        tt_teacher teacher = teacher_of(&s);
        tt_augment how = refiner(&teacher, tokenizer, model);
        tt_think_config c = refinement(shares[k]);
        tt_think_metrics m = TT_INIT;
        tt_rollouts all;
        TT_REQUIRE(make_rollouts(ctx, tokenizer, 2, 4, texts, &all) == TT_OK);
        for (i = 0; i < 8; i++) { all.items[i].reward = (float)i; }
        TT_CHECK_OK(ctx, tt_think_augment(&all, &how, &c, &m));
        for (i = 0; i < 8; i++) {
            const tt_rollout *r = &all.items[i];
            int at = i % 4, new_one = at >= 4 - joined[k] && !(k > 0 && i == 6);   /* group 1 has one attempt that ended */
            char want[3];
            TT_CHECK_INT(r->off_policy && r->guided, new_one);
            if (!new_one) {
                snprintf(want, sizeof want, "%.1s", texts[i]);
                TT_CHECK(r->response_length == (int)strlen(texts[i]) && !r->guided);
                continue;
            }
            TT_CHECK(r->response_length >= 1 && r->response_length <= 12 && r->prompt_length == 1);
            for (t = 0; t < r->response_length; t++) {
                TT_CHECK(r->kind[1 + t] == TT_KIND_OFF_POLICY && isnan(r->sampling_logprobs[t]));
            }
            TT_CHECK(r->attempt_reward >= (float)(i / 4 * 4) && r->attempt_reward < (float)(i / 4 * 4 + 4 - joined[k]));
        }
        TT_CHECK_INT(m.n_guided, k == 0 ? 2 : 3);
        TT_CHECK(m.teacher_tokens > 0 && m.n_skipped == 0);
        TT_CHECK_CONTAINS(s.asked, "[Q|");
        tt_rollouts_free(&all);
        tt_model_destroy(model);
        tt_tokenizer_destroy(tokenizer);
        tt_destroy(ctx);
    }
}
/* The new answer is what the student samples behind the template, in a stream named by step, prompt and sample. */
TT_TEST(the_new_answer_is_the_students_behind_the_template) {
    static const char *const texts[] = {"1$", "2$"};
    static const char filled[] = "Q|1|why|so 4";
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *model = tiny_model(ctx, tokenizer);
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_augment how = refiner(&teacher, tokenizer, model);
    tt_think_config c = refinement(0.01f);
    tt_think_metrics m = TT_INIT;
    tt_rollouts all;
    tt_request q = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tt_completions want;
    tt_ids ids = TT_INIT;
    static const int32_t ask = ASK, tell = TELL, end = END;
    ids.ctx = ctx;
    how.step = 3;
    how.temperature = 0.8f;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 1, 2, texts, &all) == TT_OK);
    TT_CHECK_OK(ctx, tt_think_augment(&all, &how, &c, &m));
    TT_CHECK_OK(ctx, tt_ids_append(&ids, &ask, 1));
    TT_CHECK_OK(ctx, tt_encode(tokenizer, filled, strlen(filled), TT_SPECIAL_TEXT, &ids));
    TT_CHECK_OK(ctx, tt_ids_append(&ids, &tell, 1));
    q.prompt = ids.data;
    q.prompt_length = (int)ids.size;
    q.id = tt_random(3, all.items[0].prompt_id, 0);
    sampling.max_new_tokens = 12;
    sampling.temperature = 0.8f;
    sampling.seed = tt_random(c.seed, TTI_THINK_REFINE, 0);
    sampling.stop_tokens = &end;
    sampling.n_stop_tokens = 1;
    TT_REQUIRE(tt_generate(model, &q, 1, &sampling, &want) == TT_OK);
    TT_CHECK_INT(all.items[1].response_length, want.items[0].length);
    TT_CHECK_BYTES(all.items[1].tokens + 1, want.items[0].tokens, (size_t)want.items[0].length * sizeof(int32_t));
    tt_completions_free(&want);
    tt_ids_free(&ids);
    tt_rollouts_free(&all);
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}
TT_TEST(what_refinement_has_no_room_for_is_counted) {
    static const char *const texts[] = {"1$", "2$", "3$", "4$"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *tokenizer = bytes_tokenizer(ctx);
    tt_model *model = tiny_model(ctx, tokenizer);      /* 64 positions */
    script s;
    tt_teacher teacher = teacher_of(&s);
    tt_augment how = refiner(&teacher, tokenizer, model);
    tt_think_config c = refinement(0.01f);
    tt_think_metrics m = TT_INIT;
    tt_rollouts all;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 2, 2, texts, &all) == TT_OK);
    s.reason = "a reason of far too many bytes for a model of 64 positions, at a token each";
    TT_CHECK_OK(ctx, tt_think_augment(&all, &how, &c, &m));
    TT_CHECK(m.n_skipped == 2 && m.n_guided == 0 && !all.items[1].guided && !all.items[3].guided);
    how.student = NULL;
    TT_CHECK_INT(tt_think_augment(&all, &how, &c, &m), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "refine with num_generations 2 and none, expected >= 2 and a student");
    tt_rollouts_free(&all);
    how.student = model;
    TT_REQUIRE(make_rollouts(ctx, tokenizer, 2, 1, texts, &all) == TT_OK);
    TT_CHECK_INT(tt_think_augment(&all, &how, &c, &m), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "refine with num_generations 1 and a student, expected >= 2");
    tt_rollouts_free(&all);
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_destroy(ctx);
}

static tt_status everything(tt_context *ctx, const tt_tokenizer *tokenizer, tt_model *model) {
    static const char *const texts[2] = {"ab$", "c$"};
    tt_teacher_prompt prompt = TT_INIT;
    tt_think_config c = config_of(1);
    tt_grpo_config grpo = TT_INIT;
    tt_rollouts all = TT_INIT;
    tt_model_teacher *built;
    tt_status status = make_rollouts(ctx, tokenizer, 1, 2, texts, &all);
    if (status != TT_OK) { return status; }
    prompt.stop_token = "<stop>";
    prompt.max_new_tokens = 3;
    prompt.examples_path = "build/tmp/few.txt";
    built = tt_model_teacher_create(model, tokenizer, &prompt);
    status = built ? TT_OK : tt_error_status(ctx);
    if (status == TT_OK) {
        tt_teacher teacher = tt_teacher_model(built);
        status = augment(&all, &teacher, tokenizer, &c, &grpo, 0, NULL);
        if (status == TT_OK) {
            tt_augment how = refiner(&teacher, tokenizer, model);
            tt_think_config anew = refinement(1);
            tt_rollouts_free(&all);
            status = make_rollouts(ctx, tokenizer, 1, 2, texts, &all);
            if (status == TT_OK) { status = tt_think_augment(&all, &how, &anew, NULL); }
        }
    }
    tt_model_teacher_destroy(built);
    tt_rollouts_free(&all);
    tt_step_reset(ctx);
    return status;
}
TT_TEST(every_failed_allocation_is_reported_and_leaks_nothing) {
    static const char few[] = "[system]\nx\n[self-conflict]\nQuestion:\na\nResponse:\nb\nFeedback:\nc\n";
    const char *path = tt_test_tmp("few.txt");
    long n;
    int failed = 1;
    {
        tt_context *ctx = tt_create(NULL);
        TT_CHECK_OK(ctx, tt_file_write(ctx, path, few, sizeof few - 1));
        tt_destroy(ctx);
    }
    for (n = 1; failed && n < 1000; n++) {
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
    TT_CHECK(n > 30 && n < 1000);
}

TT_MAIN(the_share_falls_as_the_schedule_says, the_teacher_leaves_for_good, the_last_closed_tag_counts, the_tag_in_which_a_text_ends_can_be_closed,
        a_guided_response_is_attempt_reason_phrase, selection_takes_a_share_of_the_stopped_responses,
        the_teacher_leaves_off_policy_responses_alone, a_failing_teacher_and_bad_settings_are_reported,
        feedback_that_is_cut_is_counted_with_the_length_that_would_do, a_teacher_may_say_nothing_or_lend_its_text, feedback_of_any_bytes_and_any_length_is_read,
        a_failing_teacher_is_not_blamed_for_an_older_error, empty_rollouts_are_an_error_or_nothing, rates_compare_with_the_attempt,
        a_model_teacher_reads_its_template_and_decodes_greedily, worked_examples_come_from_a_text_file, a_teacher_follows_its_student,
        tagged_texts_reach_the_feedback, a_new_answer_joins_the_group_and_the_attempt_stays,
        the_new_answer_is_the_students_behind_the_template, what_refinement_has_no_room_for_is_counted,
        every_failed_allocation_is_reported_and_leaks_nothing)
