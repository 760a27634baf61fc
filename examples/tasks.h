/* tasks.h - ready-made tasks for thinktuning.h: two that are generated without end, one from a file
 *
 * A tt_task gives questions with gold answers and says what a response is worth. Include it behind
 * thinktuning.h, in one file or in several: all of it is static, and what is not used neither costs nor
 * warns. It includes rewards.h and uses the public part of thinktuning.h; private names begin with ttc_.
 *
 *     #include "thinktuning.h"
 *     #include "tasks.h"
 *     tt_jsonl *data = tt_jsonl_load(ctx, "train.jsonl");
 *     tt_task task = tt_task_jsonl(data, "Question: {question}\nAnswer:", "<|endoftext|>");
 *     desc.task = &task;                                       (of a tt_trainer_desc) */
#ifndef TT_TASKS_H
#define TT_TASKS_H
#include "rewards.h"
#include <stdarg.h>

/* ---- signs: put + or - before each number so that the sum is the target ---- */

typedef struct tt_signs_desc {
    int min_n, max_n;              /* numbers per question; 0 = 3, 4                                   */
    uint64_t seed;
    double reads;                  /* share of documents in which the student reads; 0 = none          */
} tt_signs_desc;
typedef struct tt_signs tt_signs;
static inline tt_signs *tt_signs_create(tt_context *ctx, const tt_signs_desc *desc);
static inline void tt_signs_destroy(tt_signs *signs);
static inline tt_task tt_task_signs(tt_signs *signs);

/* Pretraining document number index: student, teacher or notes (see examples/thinktune.c). progress: 0..1 of
 * pretraining; in the last 7 % all are a student's (post-training on direct answers). Appends to text;
 * target_from: byte of text->data where the part to learn begins. */
static inline tt_status tt_signs_document(tt_signs *signs, uint64_t index, double progress, tt_text *text,
                                          size_t *target_from);
/* Special tokens of the task's texts; returns how many. */
static inline int tt_signs_specials(const char *const **names);
/* BPE trained on the documents: each word one token. */
static inline tt_tokenizer *tt_signs_tokenizer(const tt_signs *signs);

/* A teacher by rule, in the words of the documents: it always leads to a right answer; an attempt without n
 * signed digits gets no feedback. It samples nothing. signs is lent. */
static inline tt_teacher tt_signs_teacher(tt_signs *signs);
/* What a model as teacher is asked: template for tt_teacher_prompt, and its stop token. */
#define TT_SIGNS_TEACHER_TEMPLATE "<mentor>{question}<attempt>{response}<feedback>"
#define TT_SIGNS_TEACHER_STOP "<stop>"
/* What the student reads where desc.reads > 0: to be refined, and around a solution and feedback
 * (tt_feedback_setup). */
#define TT_SIGNS_READS_REFINE "<user>{question}\n\n{response}\n\n{reason}<student>"
#define TT_SIGNS_READS_REPROMPT "{prompt}{feedback}{solution}"
#define TT_SIGNS_READS_SOLUTION "\n\n so{successful_previous_attempt}"
#define TT_SIGNS_READS_FEEDBACK "\n\n{feedback_raw}"

/* ---- puzzles without end, none to download ----
 * Countdown: " make 24 from 3 8 2", " answer ( 8 / 2 ) ..." with each number once. Arithmetic: " compute ( 3
 * + 8 ) * 2", " answer 22". Guess is a control in which reflection cannot help: " guess from 3 8 2", and the
 * answer is the largest number with probability luck, else another one; no text can tell which, so no student
 * is right more often than luck, however long it thinks. Held out: an eighth of the multisets of numbers. */
typedef enum tt_puzzle { TT_PUZZLE_COUNTDOWN = 1, TT_PUZZLE_ARITHMETIC, TT_PUZZLE_GUESS } tt_puzzle;
enum { TT_PLUS = 1, TT_MINUS = 2, TT_TIMES = 4, TT_OVER = 8 };
typedef struct tt_puzzles_desc {
    int min_n, max_n;              /* numbers per question, up to 8; 0 = 3, 4                          */
    int max_number;                /* 0 = 9                                                            */
    int max_result;                /* of countdown and arithmetic; 0 = 100, 999; arithmetic may be negative */
    int operators;                 /* of TT_PLUS | ...; 0 = all; arithmetic: without TT_OVER           */
    float luck;                    /* of guess; 0 = 0.75                                               */
    tt_puzzle kind;                /* required                                                         */
    uint64_t seed;
} tt_puzzles_desc;
typedef struct tt_puzzles tt_puzzles;
static inline tt_puzzles *tt_puzzles_create(tt_context *ctx, const tt_puzzles_desc *desc);
static inline void tt_puzzles_destroy(tt_puzzles *puzzles);
static inline tt_task tt_task_puzzles(tt_puzzles *puzzles, const char *prompt_template,
                                      const char *end_token);
/* As of signs, for tasks with its tags: prompt "<user>{question}<student>", end "<end>",
 * TT_SIGNS_TEACHER_TEMPLATE and _STOP. */
static inline tt_status tt_puzzles_document(tt_puzzles *puzzles, uint64_t index, double progress,
                                            tt_text *text, size_t *target_from);
static inline tt_tokenizer *tt_puzzles_tokenizer(const tt_puzzles *puzzles);

/* ---- questions from a JSON-lines file {"question" or "problem", "answer"} ----
 * Gold is what follows "####", else the whole, a number with the digits it has there; the reward is
 * tt_reward_answer. Held out: the last eighth of the records (at least one), or as many of the last as
 * tt_jsonl_hold_out says, also none or all of them (a test set). */
typedef struct tt_jsonl tt_jsonl;
static inline tt_jsonl *tt_jsonl_load(tt_context *ctx, const char *path);
static inline void tt_jsonl_destroy(tt_jsonl *data);
static inline int tt_jsonl_count(const tt_jsonl *data, int split);
static inline tt_status tt_jsonl_hold_out(tt_jsonl *data, int n);
/* Records whose prompt has more than max_tokens tokens leave both splits, which else stay as they are;
 * n_left_out receives how many. NULL: the first of them is an error that names its line, its length and how
 * many more there are. */
static inline tt_status tt_jsonl_limit(tt_jsonl *data, const tt_tokenizer *tokenizer,
                                       const char *prompt_template, int max_tokens, int *n_left_out);
static inline tt_task tt_task_jsonl(tt_jsonl *data, const char *prompt_template, const char *end_token);

/* ==== documents that teach a small model the game ==========================================
 * Signs and puzzles write three kinds of documents, in which each word stands after one space and <tags> are
 * special tokens without any:
 *
 *   document = student | teacher | notes
 *   student  = "<user>" question "<student>" attempt "<end>"
 *   teacher  = "<mentor>" question "<attempt>" attempt "<feedback>" "<opinion>" ("correct" | "incorrect")
 *              "</opinion>" "<reason>" reason "</reason>" "<phrase>" "so" attempt "</phrase>" "<stop>"
 *   notes    = author question "<attempt>" attempt "\n\n" reason "\n\n" "so" attempt "<end>"
 *   reads    = "<user>" question ["\n\n" attempt] ["\n\n" reason] ["\n\n so" answer] "<student>" answer
 *              "<end>"
 *   author   = one of eight names                     opener = "mentors would say , check" if the number it
 *                                                              is about exceeds 9, else "wait , check"
 *
 * question, attempt and reason are the task's. An attempt is a right one with probability 0.3. A document
 * that reads shows one part at least (see TT_SIGNS_READS_REFINE), and takes the place of one of a student. */

/* Streams of random numbers, see tt_random: of questions (of puzzles: the ones above it), of documents. */
enum { TTC_STREAM_QUESTION = 0x7369676e, TTC_STREAM_DOCUMENT };
enum { TTC_TRIES = 10000 };        /* draws of a question or document before a task is given up as empty */

static const char *const ttc_tags[] = {
    "<user>", "<student>", "<end>", "<mentor>", "<attempt>", "<feedback>", "<opinion>", "</opinion>",
    "<reason>", "</reason>", "<phrase>", "</phrase>", "<stop>",
    "<alice>", "<bob>", "<carol>", "<david>", "<erin>", "<frank>", "<grace>", "<henry>"
};
enum { TTC_FIRST_AUTHOR = 13, TTC_N_TAGS = TTC_COUNT(ttc_tags) };

static inline int tt_signs_specials(const char *const **names) {
    *names = ttc_tags;
    return TTC_N_TAGS;
}

/* Texts are written into a line of fixed size: the longest document has about 1000 bytes. */
typedef struct ttc_line { char text[4096]; size_t size; } ttc_line;

static void ttc_write(ttc_line *line, const char *format, ...) {
    size_t room = sizeof line->text - line->size;
    va_list list;
    int n;
    va_start(list, format);
    n = vsnprintf(line->text + line->size, room, format, list);
    va_end(list);
    if (n > 0) { line->size += (size_t)n < room ? (size_t)n : room - 1; }
}

static void ttc_write_opener(ttc_line *line, long number) {
    ttc_write(line, number > 9 ? " mentors would say , check :" : " wait , check :");
}

/* The parts of a document; author: an index of ttc_tags. */
typedef enum ttc_kind { TTC_STUDENT, TTC_TEACHER, TTC_NOTES, TTC_READS } ttc_kind;
typedef struct ttc_script {
    ttc_kind kind;
    int author, right;
    ttc_line question, attempt, reason, answer;
} ttc_script;

static void ttc_script_begin(ttc_script *s, ttc_kind kind) {
    s->kind = kind;
    s->question.size = s->attempt.size = s->reason.size = s->answer.size = 0;
}

static int ttc_draw_author(tt_rng *rng) {
    return TTC_FIRST_AUTHOR + tt_rng_below(rng, TTC_N_TAGS - TTC_FIRST_AUTHOR);
}

/* A document that reads: which of the three parts are shown is drawn. */
static void ttc_write_reads(ttc_line *line, const ttc_script *s, tt_rng *rng, size_t *from) {
    int shown = 1 + tt_rng_below(rng, 7);
    line->size = 0;
    ttc_write(line, "<user>%s", s->question.text);
    if (shown & 1) { ttc_write(line, "\n\n%s", s->attempt.text); }
    if (shown & 2) { ttc_write(line, "\n\n%s", s->reason.text); }
    if (shown & 4) { ttc_write(line, "\n\n so%s", s->answer.text); }
    ttc_write(line, "<student>");
    *from = line->size;
    ttc_write(line, "%s<end>", s->answer.text);
}

/* *from: where the part to learn begins, which is the attempt. */
static void ttc_write_script(ttc_line *line, const ttc_script *s, size_t *from) {
    int student = s->kind == TTC_STUDENT, teacher = s->kind == TTC_TEACHER;
    const char *head = student ? "<user>" : teacher ? "<mentor>" : ttc_tags[s->author];
    line->size = 0;
    ttc_write(line, "%s%s", head, s->question.text);
    ttc_write(line, student ? "<student>" : "<attempt>");
    *from = line->size;
    ttc_write(line, "%s", s->attempt.text);
    if (student) {
        ttc_write(line, "<end>");
    } else if (teacher) {
        ttc_write(line, "<feedback><opinion> %s</opinion>", s->right ? "correct" : "incorrect");
        ttc_write(line, "<reason>%s</reason><phrase> so%s</phrase><stop>", s->reason.text, s->answer.text);
    } else {
        ttc_write(line, "\n\n%s\n\n so%s<end>", s->reason.text, s->answer.text);
    }
}

/* A task as a source of documents. */
typedef struct ttc_source {
    tt_context *ctx;
    const void *task;
    uint64_t seed;
    double reads;                                                       /* share of such documents        */
    int (*script)(const void *task, ttc_script *s, tt_rng *rng);        /* one draw; 0 = draw again       */
    tt_status (*words)(const void *task, tt_text *text, int *n_words);  /* all that its texts can hold    */
} ttc_source;

/* A function of (seed, index) and of the phase of pretraining: 35 % teacher, 20 % notes, the rest student. */
static tt_status ttc_document(const ttc_source *a, uint64_t index, double progress, tt_text *text,
                              size_t *target_from) {
    ttc_line line;
    ttc_script script;
    tt_rng rng;
    double teacher = progress < 0.93 ? 0.35 : 0, notes = progress < 0.93 ? 0.2 : 0, draw;
    ttc_kind kind;
    size_t from;
    int tries = 0;
    rng.seed = a->seed;
    rng.stream = tt_random(a->seed, TTC_STREAM_DOCUMENT, index);
    rng.index = 0;
    draw = tt_rng_uniform(&rng);
    kind = draw < teacher ? TTC_TEACHER : draw < teacher + notes ? TTC_NOTES : TTC_STUDENT;
    if (draw >= 1 - a->reads) { kind = TTC_READS; }
    do {
        if (tries++ == TTC_TRIES) {
            return tt_fail(a->ctx, TT_ERR_ARG, "document of a task: no question was found in %d tries; widen "
                           "max_number, max_result or operators", TTC_TRIES);
        }
        ttc_script_begin(&script, kind);
    } while (!a->script(a->task, &script, &rng));
    if (kind == TTC_READS) {
        ttc_write_reads(&line, &script, &rng, &from);
    } else {
        ttc_write_script(&line, &script, &from);
    }
    if (target_from) { *target_from = text->size + from; }
    return tt_text_append(text, line.text, line.size);
}

/* ---- a tokenizer in which each word is a token ----
 * It learns from the words of the task, so that no rare number is missing, then from 2000 documents without
 * their tags, which are never merged. */
typedef struct ttc_corpus {
    ttc_source source;
    tt_text text;
    size_t at;                /* of text: what is given next */
    uint64_t next;            /* text that comes then: 0 the words, from 1 on documents */
    tt_status status;
} ttc_corpus;

static size_t ttc_corpus_read(void *user, char *bytes, size_t n) {
    ttc_corpus *c = (ttc_corpus *)user;
    const ttc_source *s = &c->source;
    size_t done = 0;
    int n_words = 0;
    while (done < n && c->status == TT_OK) {
        if (c->at == c->text.size) {
            c->at = c->text.size = 0;
            if (c->next > 2000) { break; }
            if (c->next == 0) {
                c->status = s->words(s->task, &c->text, &n_words);
            } else {
                c->status = ttc_document(s, c->next, 0, &c->text, NULL);
            }
            c->next++;
        } else if (c->text.data[c->at] == '<') {
            while (c->text.data[c->at++] != '>') { }
        } else {
            bytes[done++] = c->text.data[c->at++];
        }
    }
    return done;
}

/* The promise of one token a word is checked where it is made. */
static tt_status ttc_check_words(const ttc_source *s, const tt_tokenizer *tokenizer) {
    tt_text text = TT_INIT;
    tt_ids ids = TT_INIT;
    int n_words = 0;
    tt_status status;
    text.ctx = ids.ctx = s->ctx;
    TTC_TRY(s->words(s->task, &text, &n_words));
    TTC_TRY(tt_encode(tokenizer, text.data, text.size, TT_SPECIAL_TEXT, &ids));
    if (ids.size != (size_t)n_words) {
        status = tt_fail(s->ctx, TT_ERR_ARG,
                         "tokenizer of a task: %lu tokens for its list of words, expected %d, "
                         "one per word",
                         (unsigned long)ids.size, n_words);
    }
done:
    tt_text_free(&text);
    tt_ids_free(&ids);
    return status;
}

static tt_tokenizer *ttc_tokenizer_of(ttc_source source) {
    ttc_corpus corpus = TT_INIT;
    tt_tokenizer_desc desc = TT_INIT;
    tt_text_source text;
    tt_tokenizer *tokenizer;
    corpus.source = source;
    corpus.text.ctx = source.ctx;
    text.read = ttc_corpus_read;
    text.user = &corpus;
    desc.min_frequency = 1;
    desc.pretokenizer = TT_PRETOKENIZE_WHITESPACE;
    desc.n_special_tokens = tt_signs_specials(&desc.special_tokens);
    tokenizer = tt_tokenizer_train(source.ctx, &desc, text);
    tt_text_free(&corpus.text);
    if (tokenizer && (corpus.status != TT_OK || ttc_check_words(&source, tokenizer) != TT_OK)) {
        tt_tokenizer_destroy(tokenizer);
        return NULL;
    }
    return tokenizer;
}

/* Appends words, each with a space before it; *n_words grows by their number. */
static tt_status ttc_add_words(tt_text *text, const char *words, int *n_words) {
    const char *c;
    for (c = words; *c; c++) { *n_words += *c == ' '; }
    return tt_text_append(text, words, (size_t)(c - words));
}

/* The break before a second attempt, and the word behind it: two tokens, at the end of each list. */
static tt_status ttc_add_break(tt_text *text, int *n_words) {
    *n_words += 2;
    return tt_text_append(text, "\n\n so", 5);
}

/* ==== signs =================================================================================
 * Guessing needs a subset sum in one pass; checking is adding up: a small model checks far better than it
 * guesses. The texts of the task:
 *
 *   question = "make" T "from" digit{n}
 *   attempt  = "answer" signed{n}                     signed = "+d" | "-d"
 *   reason   = opener ":" check { "no , twice" K ("over" | "short") ", flip" digit ":" check } ending
 *   check    = (signed "=sum"){n} "need" T "."        sum: of the signed digits so far
 *   ending   = "yes , but I should check first ." if the first check agrees and T < 0   (self-critique)
 *            | "yes ."                                (self-agreement; each "no" is a self-conflict)
 *
 * The opener is about T ("mentors": self-consultation). An attempt that is not a right one has random signs.
 * K = |sum - T| / 2. The digit to flip is the largest whose sign differs from the nearest solution, and with
 * probability 0.05 a random one. */
enum { TTC_SIGNS_MAX = 8, TTC_SIGNS_FLIPS = 7 };

struct tt_signs { tt_context *ctx; int min_n, max_n; uint64_t seed; double reads; };

/* A question, and one solution: bit i of a mask says that digit i is negative. */
typedef struct ttc_signs { int n, target, digits[TTC_SIGNS_MAX]; unsigned mask; } ttc_signs;

static inline tt_signs *tt_signs_create(tt_context *ctx, const tt_signs_desc *desc) {
    tt_signs *signs;
    int min_n = desc && desc->min_n ? desc->min_n : 3;
    int max_n = desc && desc->max_n ? desc->max_n : min_n > 4 ? min_n : 4;
    if (min_n < 2 || max_n > TTC_SIGNS_MAX || min_n > max_n) {
        tt_fail(ctx, TT_ERR_ARG,
                "tt_signs_create: min_n is %d and max_n %d, expected 2 <= min_n <= max_n <= %d", min_n, max_n,
                TTC_SIGNS_MAX);
        return NULL;
    }
    signs = (tt_signs *)tt_alloc(ctx, 1, sizeof *signs);
    if (!signs) { return NULL; }
    signs->ctx = ctx;
    signs->min_n = min_n;
    signs->max_n = max_n;
    signs->seed = desc ? desc->seed : 0;
    signs->reads = desc ? desc->reads : 0;
    return signs;
}

static inline void tt_signs_destroy(tt_signs *signs) {
    if (signs) { tt_free(signs->ctx, signs, 1, sizeof *signs); }
}

/* ---- questions of signs ---- */

static int ttc_signed_digit(const ttc_signs *p, unsigned mask, int i) {
    return (mask >> i) & 1u ? -p->digits[i] : p->digits[i];
}

static int ttc_signed_sum(const ttc_signs *p, unsigned mask) {
    int i, sum = 0;
    for (i = 0; i < p->n; i++) { sum += ttc_signed_digit(p, mask, i); }
    return sum;
}

/* An eighth of the multisets of digits is held out, for every target and order. */
static int ttc_signs_split(const ttc_signs *p) {
    unsigned char key[TTC_SIGNS_MAX + 1] = {0};      /* n, then the digits, sorted by insertion */
    int i, j;
    key[0] = (unsigned char)p->n;
    for (i = 0; i < p->n; i++) {
        for (j = i; j > 0 && key[j] > p->digits[i]; j--) { key[j + 1] = key[j]; }
        key[j + 1] = (unsigned char)p->digits[i];
    }
    return tt_hash(key, (size_t)p->n + 1, 0) % 8 == 0;
}

/* Lengths min_n, min_n + 1, ... in proportion 2 : 3 : 4 ... */
static int ttc_signs_length(const tt_signs *signs, tt_rng *rng) {
    int n, total = 0, at;
    for (n = signs->min_n; n <= signs->max_n; n++) { total += n - signs->min_n + 2; }
    at = tt_rng_below(rng, total);
    for (n = signs->min_n; at >= n - signs->min_n + 2; n++) { at -= n - signs->min_n + 2; }
    return n;
}

/* The target is the sum of random signs, so that there is a solution. */
static ttc_signs ttc_signs_draw(const tt_signs *signs, tt_rng *rng, int split) {
    ttc_signs p;
    do {
        int i;
        p.n = ttc_signs_length(signs, rng);
        for (i = 0; i < p.n; i++) { p.digits[i] = 1 + tt_rng_below(rng, 9); }
        p.mask = (unsigned)tt_rng_below(rng, 1 << p.n);
    } while (ttc_signs_split(&p) != split);
    p.target = ttc_signed_sum(&p, p.mask);
    return p;
}

static void ttc_write_question(ttc_line *line, const ttc_signs *p) {
    int i;
    ttc_write(line, " make %d from", p->target);
    for (i = 0; i < p->n; i++) { ttc_write(line, " %d", p->digits[i]); }
}

static void ttc_write_attempt(ttc_line *line, const ttc_signs *p, unsigned mask) {
    int i;
    ttc_write(line, " answer");
    for (i = 0; i < p->n; i++) { ttc_write(line, " %+d", ttc_signed_digit(p, mask, i)); }
}

/* A function of (seed, split, index). Gold is one solution of maybe several; the reward adds up. */
static tt_status ttc_signs_question(void *user, int split, uint64_t index, tt_text *question,
                                    tt_text *answer) {
    const tt_signs *signs = (const tt_signs *)user;
    ttc_line line;
    ttc_signs p;
    tt_rng rng;
    tt_status status;
    rng.seed = tt_random(signs->seed, TTC_STREAM_QUESTION, (uint64_t)split);
    rng.stream = index;
    rng.index = 0;
    p = ttc_signs_draw(signs, &rng, split != 0);
    line.size = 0;
    ttc_write_question(&line, &p);
    status = tt_text_append(question, line.text, line.size);
    line.size = 0;
    ttc_write_attempt(&line, &p, p.mask);
    return status == TT_OK ? tt_text_append(answer, line.text, line.size) : status;
}

/* ---- the reason: check by adding up, flip a sign, check again ---- */

/* The solution that differs from mask in the fewest signs, the lowest of them. */
static unsigned ttc_nearest_solution(const ttc_signs *p, unsigned mask) {
    unsigned m, best = p->mask;
    int best_flips = TTC_SIGNS_MAX + 1;
    for (m = 0; m < 1u << p->n; m++) {
        unsigned bits;
        int flips = 0;
        if (ttc_signed_sum(p, m) != p->target) { continue; }
        for (bits = m ^ mask; bits; bits &= bits - 1) { flips++; }
        if (flips < best_flips) {
            best_flips = flips;
            best = m;
        }
    }
    return best;
}

/* The largest digit with a wrong sign; with probability slip any digit. */
static int ttc_digit_to_flip(const ttc_signs *p, unsigned mask, double slip, tt_rng *rng) {
    unsigned wrong = mask ^ ttc_nearest_solution(p, mask);
    int i, best = -1;
    if (tt_rng_uniform(rng) < slip) { return tt_rng_below(rng, p->n); }
    for (i = 0; i < p->n; i++) {
        if ((wrong >> i) & 1u && (best < 0 || p->digits[i] > p->digits[best])) { best = i; }
    }
    return best;
}

static void ttc_write_check(ttc_line *line, const ttc_signs *p, unsigned mask) {
    int i, sum = 0;
    for (i = 0; i < p->n; i++) {
        sum += ttc_signed_digit(p, mask, i);
        ttc_write(line, " %+d =%d", ttc_signed_digit(p, mask, i), sum);
    }
    ttc_write(line, " need %d .", p->target);
}

/* Leads *mask to a solution; 0 if that would take too many flips. */
static int ttc_write_reason(ttc_line *line, const ttc_signs *p, unsigned *mask, double slip, tt_rng *rng) {
    int flips, excess, flip;
    ttc_write_opener(line, p->target);
    for (flips = 0; flips <= TTC_SIGNS_FLIPS; flips++) {
        ttc_write_check(line, p, *mask);
        excess = ttc_signed_sum(p, *mask) - p->target;
        if (excess == 0) {
            ttc_write(line, flips == 0 && p->target < 0 ? " yes , but I should check first ." : " yes .");
            return 1;
        }
        flip = ttc_digit_to_flip(p, *mask, slip, rng);
        ttc_write(line, " no , twice %d %s , flip %d :", (excess > 0 ? excess : -excess) / 2,
                  excess > 0 ? "over" : "short", p->digits[flip]);
        *mask ^= 1u << flip;
    }
    return 0;
}

/* ---- documents of signs ---- */

static int ttc_signs_script(const void *task, ttc_script *s, tt_rng *rng) {
    ttc_signs p = ttc_signs_draw((const tt_signs *)task, rng, 0);
    unsigned mask = tt_rng_uniform(rng) < 0.3 ? p.mask : (unsigned)tt_rng_below(rng, 1 << p.n);
    int finished = 1;
    s->author = ttc_draw_author(rng);
    s->right = ttc_signed_sum(&p, mask) == p.target;
    ttc_write_question(&s->question, &p);
    ttc_write_attempt(&s->attempt, &p, mask);
    if (s->kind != TTC_STUDENT) { finished = ttc_write_reason(&s->reason, &p, &mask, 0.05, rng); }
    ttc_write_attempt(&s->answer, &p, mask);
    return finished;
}

/* The words of the grammar, every sum and every signed digit. */
static tt_status ttc_signs_words(const void *task, tt_text *text, int *n_words) {
    int i, top = 9 * ((const tt_signs *)task)->max_n;
    tt_status status;
    *n_words = 2 * (2 * top + 1) + 9;
    TTC_TRY(ttc_add_words(text,
                          " make from answer correct incorrect wait mentors would say , check : need . no"
                          " twice over short flip yes but I should first so",
                          n_words));
    for (i = -top; i <= top; i++) { TTC_TRY(tt_text_format(text, " %d =%d", i, i)); }
    for (i = 1; i <= 9; i++) { TTC_TRY(tt_text_format(text, " %+d", i)); }
    TTC_TRY(ttc_add_break(text, n_words));
done:
    return status;
}

static ttc_source ttc_signs_source(const tt_signs *signs) {
    ttc_source s;
    s.ctx = signs->ctx;
    s.task = signs;
    s.seed = signs->seed;
    s.reads = signs->reads;
    s.script = ttc_signs_script;
    s.words = ttc_signs_words;
    return s;
}

static inline tt_status tt_signs_document(tt_signs *signs, uint64_t index, double progress, tt_text *text,
                                          size_t *target_from) {
    ttc_source source = ttc_signs_source(signs);
    return ttc_document(&source, index, progress, text, target_from);
}

static inline tt_tokenizer *tt_signs_tokenizer(const tt_signs *signs) {
    return ttc_tokenizer_of(ttc_signs_source(signs));
}

/* ---- reading texts of signs ---- */

/* The next word between white space, empty at the end; is there one? */
static int ttc_next_word(const char **at, ttc_span *word) {
    *at += strspn(*at, " \n\t\r");
    word->at = *at;
    *at += strcspn(*at, " \n\t\r");
    word->end = *at;
    return word->at < word->end;
}

/* "make T from d d d" */
static int ttc_signs_parse(const char *question, ttc_signs *p) {
    ttc_span word;
    ttc_next_word(&question, &word);
    if (!ttc_span_is(word, "make")) { return 0; }
    ttc_next_word(&question, &word);
    p->target = (int)strtol(word.at, NULL, 10);
    ttc_next_word(&question, &word);
    if (!ttc_span_is(word, "from")) { return 0; }
    for (p->n = 0; ttc_next_word(&question, &word); p->n++) {
        if (p->n == TTC_SIGNS_MAX || ttc_size(word) != 1 || *word.at < '1' || *word.at > '9') { return 0; }
        p->digits[p->n] = *word.at - '0';
    }
    return p->n > 0;
}

static int ttc_is_signed(ttc_span word) {
    return ttc_size(word) == 2 && ttc_is_one_of(*word.at, "+-") && word.at[1] >= '1' && word.at[1] <= '9';
}

/* After the word "answer": exactly the question's digits in order, each with a sign,
 * which sum to the target. */
static int ttc_signs_right(const ttc_signs *p, const char *at) {
    ttc_span word;
    int i, sum = 0;
    for (i = 0; i < p->n; i++) {
        ttc_next_word(&at, &word);
        if (!ttc_is_signed(word) || word.at[1] - '0' != p->digits[i]) { return 0; }
        sum += *word.at == '-' ? -p->digits[i] : p->digits[i];
    }
    ttc_next_word(&at, &word);
    return sum == p->target && !ttc_is_signed(word);
}

/* The signs of the last attempt in a response; 0 if it holds none of the question's form. */
static int ttc_signs_last_mask(const ttc_signs *p, const char *response, unsigned *mask) {
    const char *at = response, *last = NULL;
    ttc_span word;
    int i;
    while (ttc_next_word(&at, &word)) {
        if (ttc_span_is(word, "answer")) { last = at; }
    }
    for (i = 0, *mask = 0; last && i < p->n; i++) {
        ttc_next_word(&last, &word);
        if (!ttc_is_signed(word) || word.at[1] - '0' != p->digits[i]) { return 0; }
        if (*word.at == '-') { *mask |= 1u << i; }
    }
    return last != NULL;
}

/* ---- teacher, judge and reward of signs ---- */

static tt_status ttc_signs_feedback(void *user, const tt_attempt *attempts, int n, tt_feedback *out) {
    tt_signs *signs = (tt_signs *)user;
    tt_rng rng = TT_INIT;      /* with slip 0 a draw changes nothing */
    int i;
    for (i = 0; i < n; i++) {
        ttc_line reason, answer;
        ttc_signs p;
        unsigned mask;
        tt_status status;
        reason.size = answer.size = 0;
        if (!ttc_signs_parse(attempts[i].question, &p)) { continue; }
        if (!ttc_signs_last_mask(&p, attempts[i].response, &mask)) { continue; }
        p.mask = mask;
        ttc_write_reason(&reason, &p, &mask, 0, &rng);
        ttc_write(&answer, " so");
        ttc_write_attempt(&answer, &p, mask);
        status = tt_text_append(&out[i].reason, reason.text, reason.size);
        if (status == TT_OK) { status = tt_text_append(&out[i].phrase, answer.text, answer.size); }
        if (status != TT_OK) {
            return tt_fail(signs->ctx, status, "tt_signs_teacher: no memory for feedback");
        }
    }
    return TT_OK;
}

static inline tt_teacher tt_signs_teacher(tt_signs *signs) {
    tt_teacher teacher;
    teacher.feedback = ttc_signs_feedback;
    teacher.user = signs;
    return teacher;
}

/* By the words of the grammar. An attempt is the first answer, where no reflection, that is no empty line and
 * no "check", stands before it. The first verdict, "yes" or "no", tells the behaviour, but for "mentors",
 * which is a consultation whatever follows. */
static tt_status ttc_signs_judge(void *user, const tt_reward_input *in, tt_outcome *out) {
    ttc_signs p;
    const char *at = in->response, *reflection = strstr(in->response, "\n\n");
    ttc_span word;
    int last = 0, consults = 0;
    memset(out, 0, sizeof *out);
    if (!ttc_signs_parse(in->question, &p)) {
        return tt_fail(((const tt_signs *)user)->ctx, TT_ERR_ARG,
                       "signs: question is \"%.80s\", expected \"make T from d d d\"", in->question);
    }
    while (ttc_next_word(&at, &word)) {
        if (ttc_span_is(word, "answer")) {
            last = ttc_signs_right(&p, at);
            if (!out->attempted && (!reflection || at <= reflection)) {
                out->attempted = 1;
                out->first_right = last;
            }
        }
        if (ttc_span_is(word, "check") && (!reflection || at < reflection)) { reflection = at; }
        if (ttc_span_is(word, "mentors")) { consults = 1; }
        if (out->behaviour != TT_NO_REFLECTION) { continue; }
        if (ttc_span_is(word, "no")) { out->behaviour = TT_SELF_CONFLICT; }
        if (ttc_span_is(word, "yes")) {
            out->behaviour = strncmp(at, " ,", 2) == 0 ? TT_SELF_CRITIQUE : TT_SELF_AGREEMENT;
        }
    }
    if (consults) { out->behaviour = TT_SELF_CONSULTATION; }
    out->reflects = reflection != NULL;
    if (!out->reflects) { out->behaviour = TT_NO_REFLECTION; }
    out->final_right = last && in->stopped;
    return TT_OK;
}

static tt_status ttc_signs_reward(void *user, const tt_reward_input *in, float *reward) {
    tt_outcome outcome;
    tt_status status = ttc_signs_judge(user, in, &outcome);
    *reward = (float)outcome.final_right;
    return status;
}

static inline tt_task tt_task_signs(tt_signs *signs) {
    tt_task task = TT_INIT;
    task.name = "signs";
    task.question = ttc_signs_question;
    task.reward = ttc_signs_reward;
    task.judge = ttc_signs_judge;
    task.extract = tt_extract_expression;
    task.prompt_template = "<user>{question}<student>";
    task.end_token = "<end>";
    task.user = signs;
    return task;
}

/* ==== puzzles: countdown, arithmetic, and the control "guess" ===============================
 * Countdown and arithmetic draw numbers and join two at a time by a random operator until one term is left;
 * its text is the question of the one and the answer of the other. */
enum { TTC_PUZZLE_MAX = 8, TTC_EXPRESSION_TRIES = 100, TTC_PUZZLE_ATTEMPTS = 3 };

struct tt_puzzles { tt_context *ctx; tt_puzzles_desc desc; };      /* desc: resolved */

typedef struct ttc_term {
    long value;
    int joined;                    /* of two: inside another term it stands in brackets */
    char text[160], steps[320];    /* "( 8 / 2 ) + 3"; " 8 / 2 =4 4 + 3 =7"             */
} ttc_term;

static void ttc_puzzles_defaults(tt_puzzles_desc *d) {
    int arithmetic = d->kind == TT_PUZZLE_ARITHMETIC;
    if (d->min_n == 0) { d->min_n = 3; }
    if (d->max_n == 0) { d->max_n = d->min_n > 4 ? d->min_n : 4; }
    if (d->max_number == 0) { d->max_number = 9; }
    if (d->max_result == 0) { d->max_result = arithmetic ? 999 : 100; }
    if (d->operators == 0) { d->operators = TT_PLUS | TT_MINUS | TT_TIMES | (arithmetic ? 0 : TT_OVER); }
    if (d->luck == 0) { d->luck = 0.75f; }
}

static tt_status ttc_puzzles_check(tt_context *ctx, const tt_puzzles_desc *d) {
    static const char *const who = "tt_puzzles_create";
    if (d->kind < TT_PUZZLE_COUNTDOWN || d->kind > TT_PUZZLE_GUESS) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: kind is %d, expected %d..%d", who, (int)d->kind,
                       TT_PUZZLE_COUNTDOWN, TT_PUZZLE_GUESS);
    }
    if (d->min_n < 2 || d->max_n > TTC_PUZZLE_MAX || d->min_n > d->max_n) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: min_n is %d and max_n %d, expected 2 <= min_n <= max_n <= %d",
                       who, d->min_n, d->max_n, TTC_PUZZLE_MAX);
    }
    if (d->max_number < d->max_n || d->max_number > 9999 || d->max_result < 1 || d->max_result > 999999) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: max_number is %d and max_result %d, expected max_n .. 9999 and "
                       "1 .. 999999", who, d->max_number, d->max_result);
    }
    if ((d->operators & ~15) || !(d->luck > 0 && d->luck <= 1)) {
        return tt_fail(ctx, TT_ERR_ARG, "%s: operators is %d and luck %g, expected 1 .. 15 and 0 .. 1", who,
                       d->operators, (double)d->luck);
    }
    return TT_OK;
}

static inline tt_puzzles *tt_puzzles_create(tt_context *ctx, const tt_puzzles_desc *desc) {
    tt_puzzles *p;
    tt_puzzles_desc d = *desc;
    ttc_puzzles_defaults(&d);
    if (ttc_puzzles_check(ctx, &d) != TT_OK) { return NULL; }
    p = (tt_puzzles *)tt_alloc(ctx, 1, sizeof *p);
    if (!p) { return NULL; }
    p->ctx = ctx;
    p->desc = d;
    return p;
}

static inline void tt_puzzles_destroy(tt_puzzles *p) {
    if (p) { tt_free(p->ctx, p, 1, sizeof *p); }
}

/* ---- drawing ---- */

static int ttc_by_int(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* An eighth of the multisets of numbers is held out, in every order and for every target. */
static int ttc_puzzle_held_out(const int *numbers, int n) {
    int sorted[TTC_PUZZLE_MAX];
    memcpy(sorted, numbers, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, ttc_by_int);
    return tt_hash(sorted, (size_t)n * sizeof *sorted, 0) % 8 == 0;
}

/* min_n .. max_n numbers of 1 .. max_number; those of guess differ. */
static int ttc_puzzle_numbers(const tt_puzzles *p, tt_rng *rng, int *numbers) {
    int n = p->desc.min_n + tt_rng_below(rng, p->desc.max_n - p->desc.min_n + 1), i, j;
    for (i = 0; i < n; i++) {
        numbers[i] = 1 + tt_rng_below(rng, p->desc.max_number);
        for (j = 0; j < i && p->desc.kind == TT_PUZZLE_GUESS; j++) {
            if (numbers[j] == numbers[i]) {      /* one of them is the largest: draw another */
                i--;
                break;
            }
        }
    }
    return n;
}

/* a op b; 0 if that is no whole number, not allowed or too large. Countdown stays positive. */
static int ttc_join_value(const tt_puzzles *p, long a, long b, int op, long *value) {
    int countdown = p->desc.kind == TT_PUZZLE_COUNTDOWN;
    long most = countdown ? 10L * p->desc.max_result : p->desc.max_result;
    if (!(p->desc.operators & op) || (op == TT_OVER && (b == 0 || a % b))) { return 0; }
    *value = op == TT_PLUS ? a + b : op == TT_MINUS ? a - b : op == TT_TIMES ? a * b : a / b;
    if (countdown && *value < 1) { return 0; }
    return labs(*value) <= most;
}

/* A term of two; 0 if the operator drawn does not do, or the text is too long. */
static int ttc_join(const tt_puzzles *p, tt_rng *rng, const ttc_term *a, const ttc_term *b, ttc_term *out) {
    static const char signs[] = "+-*/";
    int k = tt_rng_below(rng, 4), n;
    if (!ttc_join_value(p, a->value, b->value, 1 << k, &out->value)) { return 0; }
    n = snprintf(out->text, sizeof out->text, "%s%s%s %c %s%s%s", a->joined ? "( " : "", a->text,
                 a->joined ? " )" : "", signs[k], b->joined ? "( " : "", b->text, b->joined ? " )" : "");
    out->joined = 1;
    if (n <= 0 || n >= (int)sizeof out->text) { return 0; }
    n = snprintf(out->steps, sizeof out->steps, "%s%s %ld %c %ld =%ld", a->steps, b->steps, a->value,
                 signs[k], b->value, out->value);
    return n > 0 && n < (int)sizeof out->steps;
}

/* One expression over all the numbers; 0 if chance made none. */
static int ttc_puzzle_expression(const tt_puzzles *p, tt_rng *rng, const int *numbers, int n, ttc_term *out) {
    ttc_term terms[TTC_PUZZLE_MAX];
    int i, j, tries = 0;
    for (i = 0; i < n; i++) {
        terms[i].value = numbers[i];
        terms[i].joined = 0;
        terms[i].steps[0] = 0;
        snprintf(terms[i].text, sizeof terms[i].text, "%d", numbers[i]);
    }
    while (n > 1) {
        ttc_term both;
        if (++tries > TTC_EXPRESSION_TRIES) { return 0; }
        i = tt_rng_below(rng, n);
        j = tt_rng_below(rng, n - 1);
        j += j >= i;
        if (!ttc_join(p, rng, &terms[i], &terms[j], &both)) { continue; }
        terms[i < j ? i : j] = both;
        terms[i < j ? j : i] = terms[--n];
    }
    *out = terms[0];
    return labs(out->value) <= p->desc.max_result;
}

/* The answer of guess: the largest number with probability luck, else one of the others. */
static int ttc_puzzle_guess(const tt_puzzles *p, tt_rng *rng, const int *numbers, int n) {
    int largest = 0, i;
    for (i = 0; i < n; i++) {
        if (numbers[i] > numbers[largest]) { largest = i; }
    }
    if (tt_rng_uniform(rng) < (double)p->desc.luck) { return numbers[largest]; }
    return numbers[(largest + 1 + tt_rng_below(rng, n - 1)) % n];
}

/* ---- questions ---- */

/* A question with its numbers and, but for guess, its expression. */
typedef struct ttc_puzzle { int n, numbers[TTC_PUZZLE_MAX]; ttc_term term; } ttc_puzzle;

/* One draw for a split; 0 = draw again. */
static int ttc_puzzle_draw(const tt_puzzles *p, tt_rng *rng, int split, ttc_puzzle *q) {
    q->n = ttc_puzzle_numbers(p, rng, q->numbers);
    if (ttc_puzzle_held_out(q->numbers, q->n) != split) { return 0; }
    return p->desc.kind == TT_PUZZLE_GUESS || ttc_puzzle_expression(p, rng, q->numbers, q->n, &q->term);
}

static void ttc_write_puzzle(const tt_puzzles *p, ttc_line *line, const ttc_puzzle *q) {
    int i;
    if (p->desc.kind == TT_PUZZLE_ARITHMETIC) {
        ttc_write(line, " compute %s", q->term.text);
        return;
    }
    if (p->desc.kind == TT_PUZZLE_GUESS) {
        ttc_write(line, " guess from");
    } else {
        ttc_write(line, " make %ld from", q->term.value);
    }
    for (i = 0; i < q->n; i++) { ttc_write(line, " %d", q->numbers[i]); }
}

/* A function of (seed, kind, split, index): draws from a stream of its own until one belongs to the split. */
static tt_status ttc_puzzle_question(void *user, int split, uint64_t index, tt_text *question,
                                     tt_text *answer) {
    const tt_puzzles *p = (const tt_puzzles *)user;
    ttc_puzzle q;
    ttc_line line;
    tt_rng rng;
    tt_status status;
    int tries = 0;
    memset(&q, 0, sizeof q);
    rng.seed = tt_random(p->desc.seed, TTC_STREAM_QUESTION + (uint64_t)p->desc.kind, (uint64_t)split);
    rng.stream = index;
    rng.index = 0;
    while (!ttc_puzzle_draw(p, &rng, split != 0, &q)) {
        if (++tries == TTC_TRIES) {
            return tt_fail(p->ctx, TT_ERR_ARG,
                           "tt_task_puzzles: no question of split %d was found in %d tries; "
                           "widen max_number, max_result or operators",
                           split, TTC_TRIES);
        }
    }
    line.size = 0;
    ttc_write_puzzle(p, &line, &q);
    status = tt_text_append(question, line.text, line.size);
    if (status != TT_OK) { return status; }
    if (p->desc.kind == TT_PUZZLE_ARITHMETIC) { return tt_text_format(answer, " answer %ld", q.term.value); }
    if (p->desc.kind == TT_PUZZLE_COUNTDOWN) { return tt_text_format(answer, " answer %s", q.term.text); }
    return tt_text_format(answer, " answer %d", ttc_puzzle_guess(p, &rng, q.numbers, q.n));
}

static inline tt_task tt_task_puzzles(tt_puzzles *p, const char *prompt_template, const char *end_token) {
    static const char *const names[] = {"", "countdown", "arithmetic", "guess"};
    int countdown = p->desc.kind == TT_PUZZLE_COUNTDOWN;
    tt_task task = TT_INIT;
    task.name = names[p->desc.kind];
    task.question = ttc_puzzle_question;
    task.reward = countdown ? tt_reward_countdown : tt_reward_last_number;
    task.extract = countdown ? tt_extract_expression : tt_extract_answer;
    task.prompt_template = prompt_template;
    task.end_token = end_token;
    task.user = p;
    return task;
}

/* ---- documents of the puzzles: those of signs, with other words ----
 *
 *   reason     = opener ":" check                              attempt = "answer" (number | expression)
 *   check      = arithmetic | guess | countdown
 *   arithmetic = { a op b "=c" } "said" attempt "." ("yes ." | "no .")
 *   guess      = "largest" m "said" attempt "." ("yes ." | "no .")
 *   countdown  = steps { "no , try" expression ":" steps } "yes ."       steps = { a op b "=c" } "need" T "."
 *
 * An attempt is right with probability 0.3. Arithmetic: else off by up to 9. Countdown: else any expression;
 * each try is the right one with probability one half, the third always. Guess: else any of the numbers. */

/* Any expression over the numbers, whatever its value; left as it was if chance makes none. */
static void ttc_any_expression(const tt_puzzles *p, tt_rng *rng, const ttc_puzzle *q, ttc_term *out) {
    ttc_term term = TT_INIT;
    int tries;
    for (tries = 0; tries < TTC_EXPRESSION_TRIES; tries++) {
        if (!ttc_puzzle_expression(p, rng, q->numbers, q->n, &term)) { continue; }
        *out = term;
        return;
    }
}

/* One attempt, one check. */
static void ttc_arithmetic_script(const tt_puzzles *p, ttc_script *s, tt_rng *rng, const ttc_puzzle *q) {
    long right = q->term.value, said = right;
    if (tt_rng_uniform(rng) >= 0.3) {
        said += tt_rng_below(rng, 2) ? 1 + tt_rng_below(rng, 9) : -1 - tt_rng_below(rng, 9);
    }
    if (labs(said) > p->desc.max_result) { said = right; }
    s->right = said == right;
    ttc_write(&s->attempt, " answer %ld", said);
    ttc_write_opener(&s->reason, said);
    ttc_write(&s->reason, "%s said %ld . %s .", q->term.steps, said, s->right ? "yes" : "no");
    ttc_write(&s->answer, " answer %ld", right);
}

/* Tries until one has the value of the target. */
static void ttc_countdown_script(const tt_puzzles *p, ttc_script *s, tt_rng *rng, const ttc_puzzle *q) {
    const long target = q->term.value;
    ttc_term at = q->term;
    int tries = 0;
    if (tt_rng_uniform(rng) >= 0.3) { ttc_any_expression(p, rng, q, &at); }
    s->right = at.value == target;
    ttc_write(&s->attempt, " answer %s", at.text);
    ttc_write_opener(&s->reason, target);
    ttc_write(&s->reason, "%s need %ld .", at.steps, target);
    while (at.value != target) {
        if (++tries == TTC_PUZZLE_ATTEMPTS || tt_rng_uniform(rng) < 0.5) {
            at = q->term;
        } else {
            ttc_any_expression(p, rng, q, &at);
        }
        ttc_write(&s->reason, " no , try %s :%s need %ld .", at.text, at.steps, target);
    }
    ttc_write(&s->reason, " yes .");
    ttc_write(&s->answer, " answer %s", at.text);
}

/* The check can only say what the largest number is, and whether luck was there. */
static void ttc_guess_script(const tt_puzzles *p, ttc_script *s, tt_rng *rng, const ttc_puzzle *q) {
    int answer = ttc_puzzle_guess(p, rng, q->numbers, q->n), largest = 0, said, i;
    said = tt_rng_uniform(rng) < 0.3 ? answer : q->numbers[tt_rng_below(rng, q->n)];
    for (i = 0; i < q->n; i++) {
        if (q->numbers[i] > largest) { largest = q->numbers[i]; }
    }
    s->right = said == answer;
    ttc_write(&s->attempt, " answer %d", said);
    ttc_write_opener(&s->reason, said);
    ttc_write(&s->reason, " largest %d said %d . %s .", largest, said, s->right ? "yes" : "no");
    ttc_write(&s->answer, " answer %d", answer);
}

static int ttc_puzzle_script(const void *task, ttc_script *s, tt_rng *rng) {
    const tt_puzzles *p = (const tt_puzzles *)task;
    ttc_puzzle q;
    memset(&q, 0, sizeof q);
    if (!ttc_puzzle_draw(p, rng, 0, &q)) { return 0; }
    s->author = ttc_draw_author(rng);
    ttc_write_puzzle(p, &s->question, &q);
    if (p->desc.kind == TT_PUZZLE_ARITHMETIC) { ttc_arithmetic_script(p, s, rng, &q); }
    if (p->desc.kind == TT_PUZZLE_COUNTDOWN) { ttc_countdown_script(p, s, rng, &q); }
    if (p->desc.kind == TT_PUZZLE_GUESS) { ttc_guess_script(p, s, rng, &q); }
    return 1;
}

/* The words of the grammar and every number, alone and behind "=". */
static tt_status ttc_puzzle_words(const void *task, tt_text *text, int *n_words) {
    const tt_puzzles_desc *d = &((const tt_puzzles *)task)->desc;
    int arithmetic = d->kind == TT_PUZZLE_ARITHMETIC, guess = d->kind == TT_PUZZLE_GUESS, i;
    int top = guess ? 0 : arithmetic ? d->max_result : 10 * d->max_result, first;
    tt_status status;
    if (top < d->max_number) { top = d->max_number; }
    first = arithmetic ? -top : 0;
    *n_words = (guess ? 1 : 2) * (top - first + 1);
    TTC_TRY(ttc_add_words(text,
                          " make compute guess from answer correct incorrect wait mentors would say , check :"
                          " need . no yes try said largest + - * / ( )",
                          n_words));
    for (i = first; i <= top; i++) {
        TTC_TRY(guess ? tt_text_format(text, " %d", i) : tt_text_format(text, " %d =%d", i, i));
    }
    TTC_TRY(ttc_add_break(text, n_words));
done:
    return status;
}

static ttc_source ttc_puzzle_source(const tt_puzzles *p) {
    ttc_source s = TT_INIT;
    s.ctx = p->ctx;
    s.task = p;
    s.seed = p->desc.seed;
    s.script = ttc_puzzle_script;
    s.words = ttc_puzzle_words;
    return s;
}

static inline tt_status tt_puzzles_document(tt_puzzles *p, uint64_t index, double progress, tt_text *text,
                                            size_t *target_from) {
    ttc_source source = ttc_puzzle_source(p);
    return ttc_document(&source, index, progress, text, target_from);
}

static inline tt_tokenizer *tt_puzzles_tokenizer(const tt_puzzles *p) {
    return ttc_tokenizer_of(ttc_puzzle_source(p));
}

/* ==== JSON lines ============================================================================
 * All texts stand in one block, each with a NUL; a record says where, and in which line of the file. The
 * splits are the first and the last records in the order of the file, so that a file that grows at its end
 * moves only what is held out; a data set with a test set of its own is read as two files, or held out by
 * number. */
typedef struct ttc_record { size_t question, answer; int line; } ttc_record;
struct tt_jsonl {
    tt_context *ctx;
    tt_text text, records;         /* records: bytes of ttc_record [n]              */
    int n, held_out;               /* held_out: -1 = an eighth                      */
};

static ttc_record *ttc_jsonl_record(const tt_jsonl *data, int i) {
    return (ttc_record *)(void *)data->records.data + i;
}

static tt_status ttc_jsonl_keep(tt_jsonl *data, const char *text, size_t *at) {
    *at = data->text.size;
    return tt_text_append(&data->text, text, strlen(text) + 1);
}

/* What follows the last "####", else the whole. */
static const char *ttc_after_hashes(const char *text) {
    const char *found = ttc_behind_last(text, "####");
    return found ? found : text;
}

/* One object of the file, checked: a question that is no empty text, an answer that is a text or a number. */
static tt_status ttc_jsonl_add(tt_jsonl *data, const tt_json_lines *lines, const tt_json *object) {
    const tt_json *answer = tt_json_get(object, "answer");
    const char *question, *gold;
    ttc_record record;
    tt_status status;
    memset(&record, 0, sizeof record);
    record.line = lines->line;
    TTC_TRY(tt_json_lines_text(lines, object, "question", 0, &question));
    if (!question) { TTC_TRY(tt_json_lines_text(lines, object, "problem", 0, &question)); }
    TTC_TRY(tt_json_lines_text(lines, object, "answer", 1, &gold));
    if (!question || !*question || !gold) {
        return tt_fail(data->ctx, TT_ERR_FILE, "tt_jsonl_load: %s line %d: it has no text \"%s\"",
                       lines->name, lines->line, question && *question ? "answer" : "question");
    }
    /* a number: as it is written */
    if (answer->type == TT_JSON_STRING) { gold = ttc_after_hashes(gold); }
    TTC_TRY(ttc_jsonl_keep(data, question, &record.question));
    TTC_TRY(ttc_jsonl_keep(data, gold, &record.answer));
    TTC_TRY(tt_text_append(&data->records, (const char *)&record, sizeof record));
    data->n++;
done:
    return status;
}

static tt_status ttc_jsonl_read(tt_jsonl *data, const char *path) {
    tt_json_lines lines = TT_INIT;
    tt_json *object = NULL;
    tt_status status;
    lines.ctx = data->ctx;
    TTC_TRY(tt_json_lines_open(&lines, path));
    TTC_TRY(tt_json_lines_next(&lines, &object));
    while (object) {
        status = ttc_jsonl_add(data, &lines, object);
        tt_json_free(data->ctx, object);
        if (status != TT_OK) { goto done; }
        TTC_TRY(tt_json_lines_next(&lines, &object));
    }
    if (data->n < 2) {
        status = tt_fail(data->ctx, TT_ERR_FILE, "tt_jsonl_load: %s has %d records, expected at least 2",
                         path, data->n);
    }
done:
    tt_json_lines_close(&lines);
    return status;
}

static inline tt_jsonl *tt_jsonl_load(tt_context *ctx, const char *path) {
    static const char who[] = "tt_jsonl_load";
    const char *error;
    int mended;
    tt_jsonl *data = (tt_jsonl *)tt_alloc(ctx, 1, sizeof *data);
    if (!data) { return NULL; }
    data->ctx = data->text.ctx = data->records.ctx = ctx;
    data->held_out = -1;
    if (ttc_jsonl_read(data, path) != TT_OK) {
        tt_jsonl_destroy(data);
        return NULL;
    }
    error = tt_error(ctx);      /* what an earlier try said is mended */
    mended = strncmp(error, who, sizeof who - 1) == 0 || strncmp(error, path, strlen(path)) == 0;
    if (mended) { tt_error_clear(ctx); }
    return data;
}

static inline void tt_jsonl_destroy(tt_jsonl *data) {
    if (!data) { return; }
    tt_text_free(&data->text);
    tt_text_free(&data->records);
    tt_free(data->ctx, data, 1, sizeof *data);
}

static inline int tt_jsonl_count(const tt_jsonl *data, int split) {
    int held_out = data->held_out >= 0 ? data->held_out : data->n / 8 > 1 ? data->n / 8 : 1;
    return split ? held_out : data->n - held_out;
}

/* The last n; tt_jsonl_limit takes from them what it leaves out. */
static inline tt_status tt_jsonl_hold_out(tt_jsonl *data, int n) {
    if (n < 0 || n > data->n) {
        return tt_fail(data->ctx, TT_ERR_ARG, "tt_jsonl_hold_out: n is %d, expected 0..%d", n, data->n);
    }
    data->held_out = n;
    return TT_OK;
}

static inline tt_status tt_jsonl_limit(tt_jsonl *data, const tt_tokenizer *tokenizer,
                                       const char *prompt_template, int max_tokens, int *n_left_out) {
    int train = tt_jsonl_count(data, 0), held_out = tt_jsonl_count(data, 1);
    int kept = 0, n_long = 0, longest = 0, first = 0, i;
    tt_ids ids = TT_INIT;
    tt_status status = TT_OK;
    ids.ctx = data->ctx;
    for (i = 0; i < data->n; i++) {
        ttc_record *record = ttc_jsonl_record(data, i);
        const char *question = data->text.data + record->question;
        ids.size = 0;
        TTC_TRY(tt_encode_prompt(tokenizer, prompt_template, strlen(prompt_template), question,
                                 strlen(question), &ids));
        if ((int)ids.size > max_tokens) {
            if (n_long++ == 0) { first = record->line; }
            if ((int)ids.size > longest) { longest = (int)ids.size; }
            held_out -= i >= train;
        } else if (n_left_out) {
            *ttc_jsonl_record(data, kept++) = *record;
        }
    }
    if (n_left_out) {
        *n_left_out = n_long;
        data->n = kept;
        data->records.size = (size_t)kept * sizeof(ttc_record);
        data->held_out = held_out;
    } else if (n_long > 0) {
        status = tt_fail(data->ctx, TT_ERR_ARG,
                         "tt_jsonl_limit: the prompts of %d records, the first in line %d, are "
                         "longer than %d tokens (the longest has %d)",
                         n_long, first, max_tokens, longest);
    }
done:
    tt_ids_free(&ids);
    return status;
}

/* Any index is valid: after the last record comes the first again. */
static tt_status ttc_jsonl_question(void *user, int split, uint64_t index, tt_text *question,
                                    tt_text *answer) {
    const tt_jsonl *data = (const tt_jsonl *)user;
    int count = tt_jsonl_count(data, split);
    const ttc_record *record;
    const char *q, *a;
    tt_status status;
    if (count == 0) { return tt_fail(data->ctx, TT_ERR_ARG, "jsonl: split %d has no records", split); }
    record = ttc_jsonl_record(data, (int)(index % (uint64_t)count) + (split ? tt_jsonl_count(data, 0) : 0));
    q = data->text.data + record->question;
    a = data->text.data + record->answer;
    status = tt_text_append(question, q, strlen(q));
    return status == TT_OK ? tt_text_append(answer, a, strlen(a)) : status;
}

/* With it a trainer looks at all prompts before it begins. */
static int ttc_jsonl_split_size(void *user, int split) {
    return tt_jsonl_count((const tt_jsonl *)user, split);
}

static inline tt_task tt_task_jsonl(tt_jsonl *data, const char *prompt_template, const char *end_token) {
    tt_task task = TT_INIT;
    task.name = "jsonl";
    task.question = ttc_jsonl_question;
    task.reward = tt_reward_answer;
    task.extract = tt_extract_answer;
    task.prompt_template = prompt_template;
    task.end_token = end_token;
    task.user = data;
    task.count = ttc_jsonl_split_size;
    return task;
}

#endif
