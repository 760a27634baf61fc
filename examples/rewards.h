/* rewards.h - rewards for thinktuning.h: is the answer right, has the response its form, is it short
 *
 * A reward function is given a question, its gold answer and a response, and gives a number; a tt_task has
 * one, each tt_reward of a trainer adds another. Include it behind thinktuning.h, in one file or in several:
 * all of it is static, and what is not used neither costs nor warns. It uses the public part of
 * thinktuning.h; private names begin with ttc_.
 *
 *     #include "thinktuning.h"
 *     #include "rewards.h"
 *     task.reward = tt_reward_answer;                           (equal: \boxed{3/4}, "#### 0.75", "so
 * 75/100.")
 *     more[0].reward = tt_reward_think_format;                  (a second one beside it)
 *     same = tt_answer_equal("\\frac{3}{4}", 11, "0.75", 4);    (1) */
#ifndef TT_REWARDS_H
#define TT_REWARDS_H
#ifndef THINKTUNING_H
#error "rewards.h: include thinktuning.h before it"
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rewards by answer: 1 or 0, and 0 for a response that did not stop; user is not used ---- */

/* Equal as texts, as exact numbers (1,234 and 1234.0, 1e5, 2 2/3, 20!'s digits), fractions and simple LaTeX
 * (1/2, 0.5, \frac12, 2\sqrt{3}, \pi), or part by part as lists (3, \frac{\pi}{2}). A unit (5 cm, 28\%,
 * 5\text{ cm}) counts only against another one; 28 percent are also 0.28. What is in doubt is not equal: a
 * rounded number, two numbers, algebra written in another way. */
static inline int tt_answer_equal(const char *gold, size_t gold_size, const char *said, size_t said_size);

/* The response, white space around it cut, is the answer to the byte. */
static inline tt_status tt_reward_exact(void *user, const tt_reward_input *in, float *reward);
/* The last numbers of response and answer are equal. */
static inline tt_status tt_reward_last_number(void *user, const tt_reward_input *in, float *reward);
/* The last \boxed{...} of the response equals the answer. */
static inline tt_status tt_reward_boxed(void *user, const tt_reward_input *in, float *reward);
/* What equals it is in \boxed{...}, else after "####", else the last number with its sign and unit; for an
 * answer that is no number, else what stands at the end, after "is" or a colon. */
static inline tt_status tt_reward_answer(void *user, const tt_reward_input *in, float *reward);

/* What these four read and compare: appends the answers found in gold and response in normal form, in which
 * equal answers are equal texts (8/3, "28 percent"; ~ before a root or pi), nothing where none was found.
 * Both texts may be NULL. */
typedef enum tt_answer_place {
    TT_ANSWER_EXACT = 1, TT_ANSWER_LAST_NUMBER, TT_ANSWER_BOXED, TT_ANSWER_ANY
} tt_answer_place;
static inline tt_status tt_answer_grade(tt_answer_place place, const tt_reward_input *in, float *reward,
                                        tt_text *gold_form, tt_text *said_form);

/* The expression in the last \boxed{} or <answer> tags, or after the last word "answer", uses each number of
 * the question once (those in its last [...], else after "from", else all) and has the value of the
 * answer. */
static inline tt_status tt_reward_countdown(void *user, const tt_reward_input *in, float *reward);

/* For tt_task.extract, in votes over samples: the answer that tt_reward_answer reads, in normal form and
 * without its unit; and the expression that tt_reward_countdown reads, as it stands: two right ones are two
 * answers. */
static inline tt_status tt_extract_answer(void *user, const tt_reward_input *in, tt_text *answer);
static inline tt_status tt_extract_expression(void *user, const tt_reward_input *in, tt_text *answer);

/* ---- rewards by form: 1 or 0, and 0 for a response that did not stop ---- */

/* The response matches a pattern, const char *user, in which * stands for any text:
 * "<think>*</think>*<answer>*</answer>". */
static inline tt_status tt_reward_format(void *user, const tt_reward_input *in, float *reward);
/* "<think>*</think>*" with one <think>: TRL's think_format_reward. */
static inline tt_status tt_reward_think_format(void *user, const tt_reward_input *in, float *reward);

/* ---- rewards by length, of responses that stopped or not: TRL's ----
 * Source: Yeo et al., arXiv 2502.03373, appendix C. */

/* max_penalty (1 - different n-grams / n-grams) of the response's tokens; 0 if they are fewer than
 * ngram_size. user: const tt_repetition *, NULL = the defaults. Time: the square of the response's length. */
typedef struct tt_repetition { int ngram_size; float max_penalty; } tt_repetition;   /* 0 = 3, -1 */
static inline tt_status tt_reward_repetition(void *user, const tt_reward_input *in, float *reward);

/* A right response is worth max_value_correct at length 0 and min_value_correct from max_length tokens on, a
 * wrong one min_value_wrong and max_value_wrong, with half a cosine between: right answers short, wrong ones
 * at least tried. */
typedef struct tt_cosine {
    /* right: above 0.5; NaN = abstain; NULL = tt_reward_answer */
    tt_status (*reward)(void *user, const tt_reward_input *in, float *reward);
    void *user;
    int max_length;                               /* required                 */
    float min_value_wrong, max_value_wrong;       /* all four 0 = -1, -0.5,   */
    float min_value_correct, max_value_correct;   /* 0.5, 1                   */
} tt_cosine;
static inline tt_status tt_reward_cosine(void *cosine, const tt_reward_input *in, float *reward);

/* ==== how an answer is read ================================================================
 * Three grammars, from the inside out: what an expression is worth, what an answer is, where one stands.
 *
 * 1. Values of expressions.
 *
 *   sum     = product {("+" | "-") product}            product = factor {("*" | "/") factor}
 *   factor  = ("+" | "-") factor | atom ["^" factor]   arg     = "{" sum "}" | digit
 *   atom    = number | mixed | "(" sum ")" | "{" sum "}" | \frac arg arg | \sqrt ["[" n "]"] arg | \pi
 *   mixed   = digits " " digits "/" digits | digits \frac arg arg
 *   number  = (digits ["." digits] | "." digits) ["e" [sign] digits]
 *
 * A factor may follow another without a sign where it cannot be a number: 2\pi, 2(3+4).
 *
 * 2. The normal form of an answer.
 *
 *   answer  = [name ("=" | "\in")] (value unit | form)
 *   form    = value | open form {"," form} close | form "," form {"," form} | text
 *
 * An answer is first written plainly: one spelling of each sign and command, braces around every argument,
 * without dollars, commas of thousands and white space; but a blank stays between two numbers or words, and
 * "~" stands before a word that was \text{...} or a sign (%). Values are then written in lowest terms: equal
 * answers are equal texts. What is in doubt stays a text, which equals nothing but itself.
 *
 * 3. Where an answer stands.
 *
 *   box     = \boxed{...}, \boxed 5, \fbox{...}: the last one that is not empty
 *   hashes  = what follows the last "####" that an answer follows; a heading (#### Final answer) is none,
 *             but the answer may stand below it
 *   number  = the last word or $...$ that has a digit, with the words that belong to it: a sign (- 3),
 *             a whole (2 2/3), digits (10 080), a unit (5 km) */

/* ---- characters and spans of text ---- */

/* The first step that fails goes to the cleanup of its function. */
#define TTC_TRY(call)  do { status = (call); if (status != TT_OK) { goto done; } } while (0)

enum {
    TTC_DIGITS = 160,               /* of a number; one of more is a text       */
    TTC_ANSWER = 512,               /* bytes of an answer in normal form        */
    TTC_REACH = 4 * TTC_ANSWER,     /* no answer is looked for further than that: what a model writes costs
                                       time in proportion to its size           */
    TTC_NESTED = 12,                /* \text and arguments inside each other    */
    TTC_NUMBERS = 32,               /* in an expression                         */
    TTC_DEPTH = 64,                 /* of factors inside each other             */
    TTC_WORDS = 4                   /* before a number that may belong to it    */
};
#define TTC_COUNT(array) (sizeof(array) / sizeof *(array))

typedef struct ttc_span { const char *at, *end; } ttc_span;      /* at NULL: none */

static int ttc_is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
static int ttc_is_digit(int c) { return c >= '0' && c <= '9'; }
static int ttc_is_letter(int c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static int ttc_is_one_of(char c, const char *set) { return c && strchr(set, c) != NULL; }

static ttc_span ttc_span_of(const char *at, const char *end) {
    ttc_span s;
    s.at = at;
    s.end = end;
    return s;
}

static size_t ttc_size(ttc_span s) { return (size_t)(s.end - s.at); }
static ttc_span ttc_text(const char *text) { return ttc_span_of(text, text + strlen(text)); }

static ttc_span ttc_trimmed(ttc_span s) {
    while (s.at < s.end && ttc_is_space(*s.at)) { s.at++; }
    while (s.at < s.end && ttc_is_space(s.end[-1])) { s.end--; }
    return s;
}

static int ttc_begins(const char *at, const char *end, const char *word) {
    return (size_t)(end - at) >= strlen(word) && memcmp(at, word, strlen(word)) == 0;
}

/* The size of the first of the words that begins here, 0 if none does. */
static size_t ttc_one_of(const char *at, const char *end, const char *const *words, size_t n, size_t *which) {
    for (*which = 0; *which < n; ++*which) {
        if (ttc_begins(at, end, words[*which])) { return strlen(words[*which]); }
    }
    return 0;
}

/* How many letters begin here. */
static int ttc_letters(const char *at, const char *end) {
    int n = 0;
    while (at + n < end && ttc_is_letter(at[n])) { n++; }
    return n;
}

/* The size of {...} with its braces; 0 if it does not end. */
static size_t ttc_braces(const char *text, const char *end) {
    int depth = 0;
    const char *at = text;
    for (; at < end; at++) {
        if (*at == '\\' && end - at > 1) {      /* \{ is no brace */
            at++;
            continue;
        }
        depth += (*at == '{') - (*at == '}');
        if (depth == 0) { return (size_t)(at - text) + 1; }
    }
    return 0;
}

/* ---- exact numbers ----
 * Whole numbers as decimal digits, and fractions of them: answers are compared to their last digit, and no
 * rounding makes two of them one. What is no fraction (a root, pi) is a double and marked inexact. Functions
 * return 0 where there is no result, or none of up to TTC_DIGITS digits. */
typedef struct ttc_whole {
    int n;                                /* 0 is zero                       */
    unsigned char digit[TTC_DIGITS + 1];  /* the lowest first                */
} ttc_whole;
typedef struct ttc_value {
    int negative, inexact;
    double real;                          /* signed; exact ones have it too  */
    ttc_whole numerator, denominator;     /* in lowest terms, without a sign */
} ttc_value;

/* The nearest double, or nearly: only roots and powers start from it, and these are checked in digits. */
static double ttc_whole_double(const ttc_whole *a) {
    double value = 0;
    int i;
    for (i = a->n - 1; i >= 0; i--) { value = value * 10 + a->digit[i]; }
    return value;
}

static int ttc_whole_compare(const ttc_whole *a, const ttc_whole *b) {
    int i = a->n - 1;
    if (a->n != b->n) { return a->n - b->n; }
    while (i >= 0 && a->digit[i] == b->digit[i]) { i--; }
    return i < 0 ? 0 : a->digit[i] - b->digit[i];
}

/* a + sign b, where a >= b if sign is -1. out may be a or b. */
static int ttc_whole_add(const ttc_whole *a, const ttc_whole *b, int sign, ttc_whole *out) {
    ttc_whole sum;
    int i, carry = 0, most = a->n > b->n ? a->n : b->n;
    sum.n = 0;
    /* digit is moved up by 10, so that division rounds down also where it would be negative. */
    for (i = 0; i < most || carry; i++) {
        int digit = (i < a->n ? a->digit[i] : 0) + sign * (i < b->n ? b->digit[i] : 0) + carry + 10;
        if (i == TTC_DIGITS) { return 0; }
        sum.digit[i] = (unsigned char)(digit % 10);
        carry = digit / 10 - 1;
        if (sum.digit[i]) { sum.n = i + 1; }
    }
    *out = sum;
    return 1;
}

/* Long multiplication, carried through once at the end: 160 products of 81 fit into an int. */
static int ttc_whole_multiply(const ttc_whole *a, const ttc_whole *b, ttc_whole *out) {
    int sums[2 * TTC_DIGITS + 1] = {0}, i, j;
    for (i = 0; i < a->n; i++) {
        for (j = 0; j < b->n; j++) { sums[i + j] += a->digit[i] * b->digit[j]; }
    }
    out->n = 0;
    for (i = 0; i < 2 * TTC_DIGITS; i++) {
        sums[i + 1] += sums[i] / 10;
        if (sums[i] % 10 && i >= TTC_DIGITS) { return 0; }
        if (i < TTC_DIGITS) { out->digit[i] = (unsigned char)(sums[i] % 10); }
        if (sums[i] % 10) { out->n = i + 1; }
    }
    return 1;
}

/* a = quotient b + rest by long division; b is not zero. */
static void ttc_whole_divide(const ttc_whole *a, const ttc_whole *b, ttc_whole *quotient, ttc_whole *rest) {
    int i;
    quotient->n = rest->n = 0;
    for (i = a->n - 1; i >= 0; i--) {
        memmove(rest->digit + 1, rest->digit, (size_t)rest->n);
        rest->digit[0] = a->digit[i];
        if (rest->n > 0 || a->digit[i]) { rest->n++; }
        quotient->digit[i] = 0;
        for (; ttc_whole_compare(rest, b) >= 0; quotient->digit[i]++) { ttc_whole_add(rest, b, -1, rest); }
        if (quotient->digit[i] && quotient->n == 0) { quotient->n = i + 1; }
    }
}

/* A whole number >= 0 that a double holds exactly. */
static void ttc_value_set(ttc_value *v, double whole) {
    memset(v, 0, sizeof *v);
    v->real = whole;
    for (; whole >= 1; whole = floor(whole / 10)) {
        v->numerator.digit[v->numerator.n++] = (unsigned char)fmod(whole, 10);
    }
    v->denominator.digit[v->denominator.n++] = 1;
}

/* In lowest terms, by Euclid, so that equal values are equal digits. An inexact one is kept where the 12
 * digits that are written of it still tell neighbours apart. */
static int ttc_value_reduce(ttc_value *v) {
    ttc_whole a = v->numerator, b = v->denominator, quotient, rest;
    if (v->inexact) { return v->real == 0 || (fabs(v->real) > 1e-9 && fabs(v->real) < 1e9); }
    if (b.n == 0) { return 0; }
    while (b.n > 0) {
        ttc_whole_divide(&a, &b, &quotient, &rest);
        a = b;
        b = rest;
    }
    ttc_whole_divide(&v->numerator, &a, &quotient, &rest);
    v->numerator = quotient;
    ttc_whole_divide(&v->denominator, &a, &quotient, &rest);
    v->denominator = quotient;
    if (v->numerator.n == 0) { v->negative = 0; }
    v->real = ttc_whole_double(&v->numerator) / ttc_whole_double(&v->denominator) * (v->negative ? -1 : 1);
    return 1;
}

/* a + sign b. out may be a. */
static int ttc_value_add(const ttc_value *a, const ttc_value *b, int sign, ttc_value *out) {
    ttc_value sum;
    ttc_whole x, y;
    int opposite = a->negative != (b->negative != (sign < 0));
    memset(&sum, 0, sizeof sum);
    sum.inexact = a->inexact || b->inexact;
    sum.real = a->real + sign * b->real;
    sum.negative = a->negative;
    if (!sum.inexact) {
        if (!ttc_whole_multiply(&a->numerator, &b->denominator, &x)) { return 0; }
        if (!ttc_whole_multiply(&b->numerator, &a->denominator, &y)) { return 0; }
        if (!ttc_whole_multiply(&a->denominator, &b->denominator, &sum.denominator)) { return 0; }
        if (opposite && ttc_whole_compare(&x, &y) < 0) {
            ttc_whole_add(&y, &x, -1, &sum.numerator);
            sum.negative = !a->negative;
        } else if (!ttc_whole_add(&x, &y, opposite ? -1 : 1, &sum.numerator)) {
            return 0;
        }
    }
    *out = sum;
    return ttc_value_reduce(out);
}

/* a b, or a / b. out may be a. */
static int ttc_value_multiply(const ttc_value *a, const ttc_value *b, int divide, ttc_value *out) {
    const ttc_whole *top = divide ? &b->denominator : &b->numerator;
    const ttc_whole *bottom = divide ? &b->numerator : &b->denominator;
    ttc_value product;
    if (divide && b->real == 0) { return 0; }
    memset(&product, 0, sizeof product);
    product.inexact = a->inexact || b->inexact;
    product.real = divide ? a->real / b->real : a->real * b->real;
    product.negative = a->negative != b->negative;
    if (!product.inexact) {
        if (!ttc_whole_multiply(&a->numerator, top, &product.numerator)) { return 0; }
        if (!ttc_whole_multiply(&a->denominator, bottom, &product.denominator)) { return 0; }
    }
    *out = product;
    return ttc_value_reduce(out);
}

static int ttc_value_equal(const ttc_value *a, const ttc_value *b) {
    return a->negative == b->negative && ttc_whole_compare(&a->numerator, &b->numerator) == 0 &&
        ttc_whole_compare(&a->denominator, &b->denominator) == 0;
}

static int ttc_value_is_whole(const ttc_value *v) {
    return !v->inexact && v->denominator.n == 1 && v->denominator.digit[0] == 1;
}

/* v^n by n products: n is small, and the digits run out first. */
static int ttc_value_power_whole(const ttc_value *v, int n, ttc_value *out) {
    ttc_value power;
    ttc_value_set(&power, 1);
    for (; n > 0; n--) {
        if (!ttc_value_multiply(&power, v, 0, &power)) { return 0; }
    }
    *out = power;
    return 1;
}

/* The whole root of a whole number, found by its double; 0 if it has none. */
static int ttc_whole_root(ttc_whole *a, int degree) {
    ttc_value root, power;
    double guess = floor(pow(ttc_whole_double(a), 1.0 / degree) + 0.5);
    if (guess > 9e15) { return 0; }
    ttc_value_set(&root, guess);
    if (!ttc_value_power_whole(&root, degree, &power) || ttc_whole_compare(&power.numerator, a) != 0) {
        return 0;
    }
    *a = root.numerator;
    return 1;
}

/* The root of a fraction is exact if numerator and denominator have whole ones: sqrt(4/9), not sqrt(12). */
static int ttc_value_root(ttc_value *v, int degree) {
    ttc_value exact = *v;
    if (v->real < 0) { return 0; }
    if (!v->inexact && ttc_whole_root(&exact.numerator, degree) &&
        ttc_whole_root(&exact.denominator, degree)) {
        *v = exact;
    } else {
        v->inexact = 1;
        v->real = degree == 2 ? sqrt(v->real) : pow(v->real, 1.0 / degree);
    }
    return ttc_value_reduce(v);
}

/* base^(p/q): the q-th root p times; of exact numbers with p and q of up to three digits. */
static int ttc_value_power(ttc_value *base, const ttc_value *exponent) {
    ttc_value one;
    int root = (int)ttc_whole_double(&exponent->denominator);
    if (base->inexact || exponent->inexact) {
        base->inexact = 1;
        base->real = pow(base->real, exponent->real);
        base->negative = 0;
        return ttc_value_reduce(base);
    }
    if (exponent->numerator.n > 3 || exponent->denominator.n > 3) { return 0; }
    if (exponent->numerator.n == 0 && base->numerator.n == 0) { return 0; }      /* 0^0 */
    if (root > 1 && !ttc_value_root(base, root)) { return 0; }
    if (!ttc_value_power_whole(base, (int)ttc_whole_double(&exponent->numerator), base)) { return 0; }
    ttc_value_set(&one, 1);
    return !exponent->negative || ttc_value_multiply(&one, base, 1, base);
}

/* ---- reading values: grammar 1 by recursive descent ----
 * A function reads what its rule says from r->at on into v, or sets r->bad. plain: the language of countdown,
 * only whole numbers, + - * / and round brackets, with white space between them. */
typedef struct ttc_reader {
    const char *at, *end;
    int plain, bad, depth;
    int n_numbers;                        /* that were read, also of those beyond the array */
    double numbers[TTC_NUMBERS];
} ttc_reader;

static void ttc_read_sum(ttc_reader *r, ttc_value *v);

/* The next byte, 0 at the end. */
static int ttc_peek(ttc_reader *r) {
    while (r->plain && r->at < r->end && ttc_is_space(*r->at)) { r->at++; }
    return r->at < r->end ? (unsigned char)*r->at : 0;
}

/* Does a word stand here? Then goes past it. */
static int ttc_accept(ttc_reader *r, const char *word) {
    size_t n = strlen(word);
    ttc_peek(r);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) { return 0; }
    r->at += n;
    return 1;
}

/* The digits that follow, after those that v->numerator has; how many. */
static int ttc_read_digits(ttc_reader *r, ttc_value *v) {
    int n = 0;
    for (; r->at < r->end && ttc_is_digit(*r->at); r->at++, n++) {
        if (v->numerator.n == TTC_DIGITS) {
            r->bad = 1;
            return n;
        }
        memmove(v->numerator.digit + 1, v->numerator.digit, (size_t)v->numerator.n);
        v->numerator.digit[0] = (unsigned char)(*r->at - '0');
        if (v->numerator.n > 0 || *r->at != '0') { v->numerator.n++; }
    }
    return n;
}

/* "e-7" after a number; white space was cut, and without digits the letter is no exponent. */
static int ttc_read_exponent(ttc_reader *r) {
    const char *at = r->at + 1;
    int negative, exponent = 0;
    if (r->plain || r->at == r->end || (*r->at != 'e' && *r->at != 'E')) { return 0; }
    negative = at < r->end && *at == '-';
    at += at < r->end && (*at == '-' || *at == '+');
    if (at == r->end || !ttc_is_digit(*at)) { return 0; }
    for (; at < r->end && ttc_is_digit(*at) && exponent < TTC_DIGITS; at++) {
        exponent = exponent * 10 + *at - '0';
    }
    r->at = at;
    return negative ? -exponent : exponent;
}

/* Digits, point, digits and exponent: all digits as one whole number, times a power of ten. */
static void ttc_read_number(ttc_reader *r, ttc_value *v) {
    ttc_value ten, scale;
    int n, decimals = 0, shift;
    ttc_value_set(v, 0);
    ttc_value_set(&ten, 10);
    n = ttc_read_digits(r, v);
    if (!r->plain && r->at < r->end && *r->at == '.') {
        r->at++;
        decimals = ttc_read_digits(r, v);
    }
    if (n + decimals == 0) { r->bad = 1; }
    shift = ttc_read_exponent(r) - decimals;
    if (r->bad || !ttc_value_power_whole(&ten, shift < 0 ? -shift : shift, &scale) || !ttc_value_reduce(v)) {
        r->bad = 1;
        return;
    }
    if (!ttc_value_multiply(v, &scale, shift < 0, v)) { r->bad = 1; }
    if (r->n_numbers < TTC_NUMBERS) { r->numbers[r->n_numbers] = v->real; }
    r->n_numbers++;
}

static void ttc_read_brackets(ttc_reader *r, const char *close, ttc_value *v) {
    ttc_read_sum(r, v);
    if (!ttc_accept(r, close)) { r->bad = 1; }
}

/* The argument of a command: a group, or one digit. */
static void ttc_read_argument(ttc_reader *r, ttc_value *v) {
    if (ttc_accept(r, "{")) {
        ttc_read_brackets(r, "}", v);
    } else if (ttc_is_digit(ttc_peek(r))) {
        ttc_value_set(v, *r->at++ - '0');
    } else {
        r->bad = 1;
    }
}

static void ttc_read_fraction(ttc_reader *r, ttc_value *v) {
    ttc_value denominator;
    ttc_value_set(&denominator, 0);
    ttc_read_argument(r, v);
    ttc_read_argument(r, &denominator);
    if (r->bad || !ttc_value_multiply(v, &denominator, 1, v)) { r->bad = 1; }
}

/* \sqrt[3]{8}: the degree is a whole number from 1 to 99. */
static void ttc_read_root(ttc_reader *r, ttc_value *v) {
    ttc_value degree;
    ttc_value_set(&degree, 2);
    if (ttc_accept(r, "[")) { ttc_read_brackets(r, "]", &degree); }
    ttc_read_argument(r, v);
    if (r->bad || !ttc_value_is_whole(&degree) || degree.negative || degree.real < 1 || degree.real > 99) {
        r->bad = 1;
        return;
    }
    if (!ttc_value_root(v, (int)degree.real)) { r->bad = 1; }
}

/* After a whole number: the fraction of a mixed number, denominator 1. */
static void ttc_read_mixed(ttc_reader *r, ttc_value *v) {
    ttc_value part, denominator;
    if (r->plain || !ttc_value_is_whole(v)) { return; }
    if (ttc_accept(r, "\\frac")) {
        ttc_read_fraction(r, &part);
    } else if (ttc_accept(r, " ")) {
        ttc_read_number(r, &part);
        if (r->bad || !ttc_accept(r, "/")) {
            r->bad = 1;
            return;
        }
        ttc_read_number(r, &denominator);
        if (r->bad || !ttc_value_multiply(&part, &denominator, 1, &part)) { r->bad = 1; }
    } else {
        return;
    }
    if (r->bad || part.real <= 0 || part.real >= 1 || !ttc_value_add(v, &part, 1, v)) { r->bad = 1; }
}

static void ttc_read_atom(ttc_reader *r, ttc_value *v) {
    int c = ttc_peek(r);
    if (ttc_is_digit(c) || (c == '.' && !r->plain)) {
        ttc_read_number(r, v);
        if (!r->bad) { ttc_read_mixed(r, v); }
    } else if (ttc_accept(r, "(")) {
        ttc_read_brackets(r, ")", v);
    } else if (r->plain) {
        r->bad = 1;
    } else if (ttc_accept(r, "{")) {
        ttc_read_brackets(r, "}", v);
    } else if (ttc_accept(r, "\\frac")) {
        ttc_read_fraction(r, v);
    } else if (ttc_accept(r, "\\sqrt")) {
        ttc_read_root(r, v);
    } else if (ttc_accept(r, "\\pi")) {
        v->inexact = 1;
        v->real = 3.141592653589793;
    } else {
        r->bad = 1;
    }
}

/* The sign binds less than the power: -2^2 is -4. Powers bind to the right: 2^3^2 is 512. */
static void ttc_read_factor(ttc_reader *r, ttc_value *v) {
    int minus;
    ttc_value exponent;
    ttc_value_set(v, 0);
    if (++r->depth > TTC_DEPTH) { r->bad = 1; }
    minus = !r->bad && ttc_accept(r, "-");
    if (r->bad) {
        r->depth--;
        return;
    }
    if (minus || ttc_accept(r, "+")) {
        ttc_read_factor(r, v);
        if (minus && v->real != 0) {
            v->negative = !v->negative;
            v->real = -v->real;
        }
    } else {
        ttc_read_atom(r, v);
        if (!r->bad && !r->plain && ttc_accept(r, "^")) {
            ttc_read_factor(r, &exponent);
            if (r->bad || !ttc_value_power(v, &exponent)) { r->bad = 1; }
        }
    }
    r->depth--;
}

/* Factors without a sign between them too; from left to right: 24/4/2 is 3. */
static void ttc_read_product(ttc_reader *r, ttc_value *v) {
    ttc_value next;
    ttc_read_factor(r, v);
    while (!r->bad) {
        int c = ttc_peek(r), divide = ttc_accept(r, "/");
        if (!divide && !ttc_accept(r, "*") && (r->plain || (c != '(' && c != '\\' && c != '{'))) { return; }
        ttc_read_factor(r, &next);
        if (r->bad || !ttc_value_multiply(v, &next, divide, v)) { r->bad = 1; }
    }
}

static void ttc_read_sum(ttc_reader *r, ttc_value *v) {
    ttc_value next;
    ttc_read_product(r, v);
    while (!r->bad) {
        int minus = ttc_accept(r, "-");
        if (!minus && !ttc_accept(r, "+")) { return; }
        ttc_read_product(r, &next);
        if (r->bad || !ttc_value_add(v, &next, minus ? -1 : 1, v)) { r->bad = 1; }
    }
}

/* The value of the whole text; 0 if it is no expression. */
static int ttc_read_value(ttc_span text, int plain, ttc_reader *r, ttc_value *value) {
    memset(r, 0, sizeof *r);
    r->at = text.at;
    r->end = text.end;
    r->plain = plain;
    ttc_read_sum(r, value);
    return !r->bad && ttc_peek(r) == 0 && r->at == r->end && r->n_numbers <= TTC_NUMBERS;
}

/* ---- an answer written plainly: the first half of grammar 2 ---- */
typedef struct ttc_answer {
    char text[TTC_ANSWER];
    size_t size, unit;      /* of text; where its unit begins, else size    */
    int depth;              /* of round and square brackets, while writing  */
    int too_long;           /* for text, or nested too deep                 */
    int is_number;          /* a value, maybe with a unit                   */
    ttc_value value;        /* if is_number                                 */
} ttc_answer;
static void ttc_answer_plain(ttc_answer *a, ttc_span text, int nested);

static void ttc_answer_put(ttc_answer *a, const char *text, size_t n) {
    if (a->size + n >= TTC_ANSWER) {
        a->too_long = 1;
        return;
    }
    memcpy(a->text + a->size, text, n);
    a->text[a->size += n] = 0;
}

static ttc_span ttc_written(const ttc_answer *a) { return ttc_span_of(a->text, a->text + a->size); }

/* The size of what is a blank to a typesetter; 0 if none begins here. */
static size_t ttc_blank(const char *at, const char *end) {
    static const char *const blanks[] = {
        " ", "\n", "\t", "\r", "~", "\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "\xC2\xA0",
        "\xE2\x80\x89", "\xE2\x80\xAF"
    };
    size_t which;
    return ttc_one_of(at, end, blanks, TTC_COUNT(blanks), &which);
}

/* The steps below write what begins at `at` and return its size, or 0 if it is another thing.
 * Signs and commands that have one spelling here, or none. */
static size_t ttc_plain_command(ttc_answer *a, const char *at, const char *end) {
    static const struct { const char *name, *instead; } commands[] = {
        {"\\\\", "\\\\"}, {"\\left", ""}, {"\\right", ""}, {"\\!", ""}, {"\\(", ""}, {"\\)", ""},
        {"\\[", ""}, {"\\]", ""}, {"\\$", ""}, {"$", ""}, {"\xE2\x82\xAC", ""}, {"\xC2\xA3", ""},
        {"\\boxed", ""}, {"\\fbox", ""},
        {"\\displaystyle", ""}, {"\\%", "~percent"}, {"%", "~percent"}, {"^\\circ", "~degrees"},
        {"^{\\circ}", "~degrees"}, {"\\degree", "~degrees"}, {"\xC2\xB0", "~degrees"}, {"\\cdot", "*"},
        {"\\times", "*"}, {"\xC3\x97", "*"}, {"\xC2\xB7", "*"}, {"\\div", "/"}, {"\xC3\xB7", "/"},
        {"\xE2\x81\x84", "/"}, {"\xE2\x88\x92", "-"}, {"\xE2\x80\x93", "-"}, {"minus ", "-"},
        {"negative ", "-"}, {"\xCF\x80", "\\pi"}, {"\xE2\x88\x9E", "\\infty"}, {"\\leq", "\\le"},
        {"\\geq", "\\ge"}, {"\\neq", "\\ne"},
        {"\xC2\xBC", "\\frac{1}{4}"}, {"\xC2\xBD", "\\frac{1}{2}"}, {"\xC2\xBE", "\\frac{3}{4}"},
        {"\xE2\x85\x93", "\\frac{1}{3}"}, {"\xE2\x85\x94", "\\frac{2}{3}"}
    };
    size_t k;
    for (k = 0; k < TTC_COUNT(commands); k++) {
        size_t n = strlen(commands[k].name);
        if (!ttc_begins(at, end, commands[k].name)) { continue; }
        /* \leftarrow is not \left */
        if (ttc_is_letter(at[n - 1]) && ttc_letters(at + n, end) > 0) { continue; }
        ttc_answer_put(a, commands[k].instead, strlen(commands[k].instead));
        return n;
    }
    return 0;
}

/* \text{ cm} becomes ~cm, with the words inside written plainly too. */
static size_t ttc_plain_words(ttc_answer *a, const char *at, const char *end, int nested) {
    static const char *const heads[] = {
        "\\text{", "\\mbox{", "\\textbf{", "\\mathrm{", "\\textrm{", "\\mathbf{"
    };
    size_t k, n, head = ttc_one_of(at, end, heads, TTC_COUNT(heads), &k);
    ttc_span inside;
    if (head == 0) { return 0; }
    at += head - 1;
    n = ttc_braces(at, end);
    if (n < 2) { return 0; }
    inside = ttc_span_of(at + 1, at + n - 1);
    if (a->size > 0 && n > 2) { ttc_answer_put(a, "~", 1); }
    while (inside.at < inside.end && ttc_is_space(*inside.at)) { inside.at++; }
    ttc_answer_plain(a, inside, nested + 1);
    return head - 1 + n;
}

/* An argument of a command: a group, a command of letters, the digits of an exponent, or one byte; written
 * in braces. */
static size_t ttc_plain_argument(ttc_answer *a, const char *at, const char *end, int digits, int nested) {
    const char *from = at, *to;
    while (from < end && ttc_is_space(*from)) { from++; }
    if (from == end) { return (size_t)(from - at); }
    to = from + 1;
    ttc_answer_put(a, "{", 1);
    if (*from == '{' && ttc_braces(from, end) > 0) {
        to = from + ttc_braces(from, end);
        ttc_answer_plain(a, ttc_span_of(from + 1, to - 1), nested + 1);
    } else {
        if (*from == '\\') { to += ttc_letters(to, end); }
        while (digits && to < end && ttc_is_digit(*to) && (ttc_is_digit(to[-1]) || to[-1] == '-')) { to++; }
        ttc_answer_put(a, from, (size_t)(to - from));
    }
    ttc_answer_put(a, "}", 1);
    return (size_t)(to - at);
}

/* A command with its arguments in braces: \frac12 becomes \frac{1}{2}, x^2 becomes x^{2}. The index of
 * \sqrt[3] stays. */
static size_t ttc_plain_arguments(ttc_answer *a, const char *at, const char *end, int nested) {
    static const char *const names[] = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac", "\\sqrt", "^", "_"};
    enum { SQRT = 4 };      /* before it fractions, behind it the signs of one byte */
    size_t k, n = ttc_one_of(at, end, names, TTC_COUNT(names), &k), i;
    if (n == 0 || (k > SQRT && (at + 1 == end || at[1] == '('))) { return 0; }
    ttc_answer_put(a, k < SQRT ? "\\frac" : names[k], k > SQRT ? 1 : 5);
    if (k == SQRT && at + n < end && at[n] == '[') {
        for (i = n; at + i < end && at[i] != ']'; i++) { }
        if (at + i < end) {
            ttc_answer_put(a, at + n, i + 1 - n);
            n = i + 1;
        }
    }
    for (i = 0; i < (k < SQRT ? 2u : 1u); i++) { n += ttc_plain_argument(a, at + n, end, k > SQRT, nested); }
    return n;
}

/* Digits in groups of three, 1,234,567 or 10\,080, written without what stands between; a comma only
 * outside brackets. */
static size_t ttc_plain_thousands(ttc_answer *a, const char *begin, const char *at, const char *end) {
    static const char *const seps[] = {
        ",", "{,}", "\\,", "\\ ", " ", "~", "\xC2\xA0", "\xE2\x80\x89", "\xE2\x80\xAF"
    };
    const char *to = at;
    size_t before = a->size, k = 0, n;
    int groups = 0;
    if (at == end || *at < '1' || *at > '9' || (at > begin && (ttc_is_digit(at[-1]) || at[-1] == '.'))) {
        return 0;
    }
    while (to < end && ttc_is_digit(*to)) { to++; }
    if (to - at > 3) { return 0; }
    ttc_answer_put(a, at, (size_t)(to - at));
    for (;; groups++) {
        n = groups ? (ttc_begins(to, end, seps[k]) ? strlen(seps[k]) : 0)
            : ttc_one_of(to, end, seps, TTC_COUNT(seps), &k);
        if (n > 0 && k == 0 && ttc_begins(to + n, end, "\\!")) {
            for (n += 2; to + n < end && to[n] == ' '; n++) { }
        }
        if (n == 0 || to + n == end || !ttc_is_digit(to[n])) { break; }
        to += n;
        for (n = 0; to + n < end && ttc_is_digit(to[n]); n++) { }
        if (n != 3 || (k == 0 && a->depth > 0)) {
            groups = 0;
            break;
        }
        ttc_answer_put(a, to, 3);
        to += 3;
    }
    if (groups > 0 && !ttc_begins(to, end, "/")) { return (size_t)(to - at); }
    a->text[a->size = before] = 0;
    return 0;
}

/* A blank stays where two numbers or words would become one. */
static size_t ttc_plain_blank(ttc_answer *a, const char *at, const char *end) {
    size_t n = 0, step;
    char before = a->size > 0 ? a->text[a->size - 1] : '(';
    while ((step = ttc_blank(at + n, end)) > 0) { n += step; }
    at += n;
    if (n == 0 || at == end) { return n; }
    if ((ttc_is_letter(before) && (ttc_is_letter(*at) || ttc_is_digit(*at))) ||
        (ttc_is_digit(before) && ttc_is_digit(*at)) ||
        ((ttc_is_digit(before) || before == '}' || before == ')') && ttc_letters(at, end) > 1)) {
        ttc_answer_put(a, " ", 1);
    }
    return n;
}

/* Each byte goes to the first step that wants it, or stands for itself. */
static void ttc_answer_plain(ttc_answer *a, ttc_span text, int nested) {
    const char *at = text.at, *end = text.end;
    if (nested > TTC_NESTED) { a->too_long = 1; }
    while (at < end && !a->too_long) {
        size_t n = ttc_plain_words(a, at, end, nested);
        if (n == 0) { n = ttc_plain_command(a, at, end); }
        if (n == 0) { n = ttc_plain_arguments(a, at, end, nested); }
        if (n == 0) { n = ttc_plain_thousands(a, text.at, at, end); }
        if (n == 0) { n = ttc_plain_blank(a, at, end); }
        if (n > 0) {
            at += n;
            continue;
        }
        a->depth += ttc_is_one_of(*at, "([") - ttc_is_one_of(*at, ")]");
        ttc_answer_put(a, at++, 1);
    }
}

/* ---- the normal form: the second half of grammar 2 ---- */

static void ttc_whole_write(ttc_answer *a, const ttc_whole *whole) {
    int i;
    for (i = whole->n - 1; i >= 0; i--) { ttc_answer_put(a, &"0123456789"[whole->digit[i]], 1); }
    if (whole->n == 0) { ttc_answer_put(a, "0", 1); }
}

/* In lowest terms; an inexact one as ~ and 12 digits, so that it is never taken for an exact one. */
static void ttc_value_write(ttc_answer *a, const ttc_value *v) {
    char exponent[16];
    int n = 0;
    double size = fabs(v->real);
    ttc_value digits;
    if (v->negative || (v->inexact && v->real < 0)) { ttc_answer_put(a, "-", 1); }
    if (v->inexact) {
        for (; size > 0 && size < 99999999999.5; n++) { size *= 10; }
        ttc_value_set(&digits, floor(size + 0.5));
        ttc_answer_put(a, "~", 1);
        ttc_whole_write(a, &digits.numerator);
        snprintf(exponent, sizeof exponent, "e-%d", n);
        ttc_answer_put(a, exponent, strlen(exponent));
        return;
    }
    ttc_whole_write(a, &v->numerator);
    if (ttc_value_is_whole(v)) { return; }
    ttc_answer_put(a, "/", 1);
    ttc_whole_write(a, &v->denominator);
}

/* The first part of a list, up to a comma outside brackets. */
static ttc_span ttc_list_part(ttc_span list) {
    int depth = 0;
    const char *at;
    for (at = list.at; at < list.end; at++) {
        depth += ttc_is_one_of(*at, "([{") - ttc_is_one_of(*at, ")]}");
        if (depth == 0 && *at == ',') { return ttc_span_of(list.at, at); }
    }
    return list;
}

/* "(...)" or "[...)" whose first bracket is closed by the last byte. */
static int ttc_is_bracketed(ttc_span s) {
    int depth = 0;
    const char *at;
    for (at = s.at; at < s.end; at++) {
        depth += ttc_is_one_of(*at, "([") - ttc_is_one_of(*at, ")]");
        if (depth < 1) { break; }
    }
    return ttc_size(s) > 2 && at + 1 == s.end;
}

/* 2024-05-06, 3-5, 1-1/2: what may be a date, a range, a number of a telephone or a mixed one is no
 * difference. But a range rises: 10-5 is one. */
static int ttc_is_hyphened(ttc_span s) {
    const char *text = s.at;
    size_t size = ttc_size(s), i, signs = 0, first = 0, second;
    for (i = 0; i < size; i++) {
        if (ttc_is_digit(text[i])) { continue; }
        if (!ttc_is_one_of(text[i], "-/") || i == 0 || !ttc_is_digit(text[i - 1])) { return 0; }
        if (text[i] == '-') { first = i; }
        signs++;
    }
    second = size - first - 1;
    if (first == 0 || signs > 1) { return first > 0; }
    return first < second || (first == second && memcmp(text, text + first + 1, first) <= 0);
}

/* form: a value, a bracket, a list, or text. Four levels of brackets and lists are read. */
static void ttc_form_write(ttc_answer *a, ttc_span text, int nested) {
    ttc_reader r;
    ttc_span part = ttc_list_part(text);
    const char *at;
    if (ttc_read_value(text, 0, &r, &a->value)) {
        a->is_number = nested == 0;
        ttc_value_write(a, &a->value);
    } else if (nested < 4 && ttc_is_bracketed(text)) {
        ttc_answer_put(a, text.at, 1);
        ttc_form_write(a, ttc_span_of(text.at + 1, text.end - 1), nested + 1);
        ttc_answer_put(a, text.end - 1, 1);
    } else if (nested < 4 && part.end < text.end) {
        for (at = text.at; at < text.end; at = part.end + 1) {
            part = ttc_list_part(ttc_span_of(at, text.end));
            if (at > text.at) { ttc_answer_put(a, ",", 1); }
            ttc_form_write(a, part, nested + 1);
        }
    } else {
        for (at = text.at; at < text.end; at++) { ttc_answer_put(a, *at == '~' ? " " : at, 1); }
    }
}

/* What stands after a number is its unit if it is "~" and words, a word of three letters (5 apples), or one
 * of `units`; cm^{2} and km/h too. No unit has one of `words`: "2 or 3" is no 2. */
static int ttc_is_unit(const char *at, const char *end) {
    static const char *const units[] = {
        "cm", "mm", "km", "kg", "mg", "ml", "mL", "ft", "yd", "mi", "lb", "oz", "hr"
    };
    static const char *const words[] = {
        "or", "and", "more", "less", "than", "mod", "not",
        "hundred", "thousand", "million", "billion", "trillion"
    };
    char before = *at;
    int n;
    size_t which;
    at += before == '~' || before == ' ';
    n = ttc_letters(at, end);
    if (n == 0) { return 0; }
    if (before != '~' && (before != ' ' || n < 3)) {
        if (n != 2 || !ttc_one_of(at, end, units, TTC_COUNT(units), &which)) { return 0; }
    }
    while (at < end) {
        n = ttc_letters(at, end);
        if (n > 0 && ttc_one_of(at, end, words, TTC_COUNT(words), &which) == (size_t)n) { return 0; }
        at += n;
        if (end - at > 3 && ttc_begins(at, end, "^{") && ttc_is_digit(at[2]) && at[3] == '}') {
            at += 4;
        } else if (at < end && ttc_is_one_of(*at, " ~/.-")) {
            at++;
        } else if (n == 0) {
            return 0;
        }
    }
    return 1;
}

/* A number and its unit; 0 if the text is another thing. */
static int ttc_measure_write(ttc_answer *a, ttc_span text) {
    ttc_reader r;
    const char *unit;
    for (unit = text.at + 1; unit < text.end; unit++) {
        int sign = *unit == ' ' || *unit == '~';
        if (!sign && !(ttc_is_letter(*unit) && ttc_is_digit(unit[-1]))) { continue; }
        if (!ttc_is_unit(unit, text.end)) { continue; }
        if (!ttc_read_value(ttc_span_of(text.at, unit), 0, &r, &a->value)) { continue; }
        a->is_number = 1;
        ttc_value_write(a, &a->value);
        a->unit = a->size;
        ttc_answer_put(a, " ", 1);
        for (unit += sign; unit < text.end; unit++) { ttc_answer_put(a, *unit == '~' ? " " : unit, 1); }
        return 1;
    }
    return 0;
}

/* "x", "y_{1}", "f(x)", "\theta", "Total": what may stand before "=". */
static int ttc_is_name(ttc_span s) {
    const char *at = s.at + (s.at < s.end && *s.at == '\\');
    if (ttc_letters(at, s.end) == 0) { return 0; }
    while (at < s.end && (ttc_is_letter(*at) || *at == ' ')) { at++; }
    if (ttc_begins(at, s.end, "_{")) { at += 1 + ttc_braces(at + 1, s.end); }
    return at == s.end || (*at == '(' && ttc_is_bracketed(ttc_span_of(at, s.end)));
}

/* What follows "x =", "x \in" or "40 + 2 =". An equation of other sides is an answer itself. */
static ttc_span ttc_after_name(ttc_span text) {
    ttc_reader r;
    ttc_value value;
    ttc_span rest = text;
    const char *at;
    for (at = text.at; at < text.end; at++) {
        int sign = *at == '=' ? 1 : ttc_begins(at, text.end, "\\in") ? 3 : 0;
        ttc_span left = ttc_span_of(rest.at, at);
        if (sign == 0 || (sign == 3 && ttc_letters(at + 3, text.end) > 0)) { continue; }
        if (!ttc_is_name(left) && (sign > 1 || !ttc_read_value(left, 0, &r, &value))) { break; }
        rest.at = at + sign;
    }
    return rest.at < rest.end ? rest : text;
}

/* The unit that a sign of money before or after a number says; a pair of dollar signs is none. */
static const char *ttc_money(ttc_span s) {
    int dollars = 0;
    for (; s.at < s.end; s.at++) {
        if (ttc_begins(s.at, s.end, "\xE2\x82\xAC")) { return " euros"; }
        if (ttc_begins(s.at, s.end, "\xC2\xA3")) { return " pounds"; }
        if (ttc_begins(s.at, s.end, "\\$")) { return " dollars"; }
        dollars += *s.at == '$';
    }
    return dollars % 2 ? " dollars" : "";
}

/* "Even" is "even", but names of one letter and NATO stay. */
static void ttc_lower_first(ttc_answer *a) {
    if (ttc_letters(a->text, a->text + a->size) > 1 && a->text[1] >= 'a' && a->text[0] < 'a') {
        a->text[0] = (char)(a->text[0] + 'a' - 'A');
    }
}

/* An answer in normal form, by grammar 2. */
static void ttc_answer_read(ttc_span text, ttc_answer *a) {
    ttc_answer plain;
    memset(&plain, 0, sizeof plain);
    memset(a, 0, sizeof *a);
    a->too_long = ttc_size(text) > TTC_REACH;
    if (a->too_long) { return; }
    while (text.at < text.end && ttc_is_space(*text.at)) { text.at++; }
    while (text.at < text.end && (ttc_is_space(text.end[-1]) || text.end[-1] == '.')) { text.end--; }
    if (ttc_is_hyphened(text)) {
        ttc_answer_put(a, text.at, ttc_size(text));
    } else {
        ttc_answer_plain(&plain, text, 0);
        while (plain.size > 0 && plain.text[plain.size - 1] == '.') { plain.size--; }
        if (!plain.too_long) {
            ttc_span rest = ttc_after_name(ttc_written(&plain));
            if (!ttc_measure_write(a, rest)) { ttc_form_write(a, rest, 0); }
        }
    }
    a->too_long |= plain.too_long;
    if (a->unit == 0) { a->unit = a->size; }
    if (a->is_number && a->unit == a->size) { ttc_answer_put(a, ttc_money(text), strlen(ttc_money(text))); }
    ttc_lower_first(a);
}

/* ---- comparing: equal in normal form, or 28 percent and 0.28 ---- */

/* Units agree if one of them is not said, or is the other's plural. */
static int ttc_units_agree(const ttc_answer *a, const ttc_answer *b) {
    size_t n = a->size - a->unit, m = b->size - b->unit;
    const char *rest;
    if (n > m) { return ttc_units_agree(b, a); }
    rest = b->text + b->unit + n;
    return n == 0 || (memcmp(a->text + a->unit, b->text + b->unit, n) == 0 &&
                      (n == m || strcmp(rest, "s") == 0 || strcmp(rest, "es") == 0));
}

/* A number whose unit is percent. */
static int ttc_is_percent(const ttc_answer *a) {
    return a->is_number && strcmp(a->text + a->unit, " percent") == 0;
}

/* Same text and units that agree; or a percentage and a hundredth of it without a unit. */
static int ttc_answers_equal(const ttc_answer *a, const ttc_answer *b) {
    ttc_answer part;
    ttc_value hundred;
    if (a->size == 0 || b->size == 0) { return 0; }
    if (a->unit == b->unit && memcmp(a->text, b->text, a->unit) == 0) { return ttc_units_agree(a, b); }
    if (ttc_is_percent(b) && !ttc_is_percent(a)) { return ttc_answers_equal(b, a); }
    if (!ttc_is_percent(a) || !b->is_number || b->unit < b->size) { return 0; }
    memset(&part, 0, sizeof part);
    ttc_value_set(&hundred, 100);
    if (!ttc_value_multiply(&a->value, &hundred, 1, &part.value)) { return 0; }
    ttc_value_write(&part, &part.value);
    return part.size == b->size && memcmp(part.text, b->text, part.size) == 0;
}

static int ttc_same_text(ttc_span a, ttc_span b) {
    return ttc_size(a) == ttc_size(b) && memcmp(a.at, b.at, ttc_size(a)) == 0;
}

static inline int tt_answer_equal(const char *gold, size_t gold_size, const char *said, size_t said_size) {
    ttc_span x = ttc_span_of(gold, gold + gold_size), y = ttc_span_of(said, said + said_size);
    ttc_answer a, b;
    ttc_answer_read(x, &a);
    ttc_answer_read(y, &b);
    return a.too_long || b.too_long ? ttc_same_text(x, y) : ttc_answers_equal(&a, &b);
}

/* ---- where an answer stands: grammar 3 ---- */

static ttc_span ttc_response(const tt_reward_input *in) {
    return ttc_span_of(in->response, in->response + in->response_size);
}

static float ttc_if_stopped(const tt_reward_input *in, int right) {
    return in->stopped && right ? 1.0f : 0.0f;
}

/* The end of what an answer that begins here may be. */
static const char *ttc_reach(const char *at, const char *end) {
    return end - at > TTC_REACH ? at + TTC_REACH : end;
}

/* A fraction in one sign begins here. */
static int ttc_is_one_sign(ttc_span s) {
    static const char *const fractions[] = {      /* 1/4 1/2 3/4 1/3 2/3 */
        "\xC2\xBC", "\xC2\xBD", "\xC2\xBE", "\xE2\x85\x93", "\xE2\x85\x94"
    };
    size_t which;
    return ttc_one_of(s.at, s.end, fractions, 5, &which) > 0;
}

static int ttc_has_digit(ttc_span s) {
    for (; s.at < s.end; s.at++) {
        if (ttc_is_digit(*s.at) || ttc_is_one_sign(s)) { return 1; }
    }
    return 0;
}

/* What is in the last box; at NULL if there is none. A box without braces reaches to the next blank: \boxed
 * 5. */
static ttc_span ttc_boxed(ttc_span text) {
    static const char *const names[] = {"\\boxed", "\\fbox"};
    ttc_span found = {NULL, NULL};
    const char *at, *end;
    size_t k, n;
    for (at = text.at; at < text.end; at++) {
        ttc_span inside;
        n = ttc_one_of(at, text.end, names, 2, &k);
        if (n == 0 || ttc_letters(at + n, text.end) > 0) { continue; }
        inside.at = at + n;
        while (inside.at < text.end && *inside.at == ' ') { inside.at++; }
        inside.end = inside.at;
        end = ttc_reach(inside.at, text.end);
        n = inside.at < end && *inside.at == '{' ? ttc_braces(inside.at, end) : 0;
        if (n > 0) {
            inside = ttc_span_of(inside.at + 1, inside.at + n - 1);
        } else if (inside.at < end && ttc_is_one_of(*inside.at, "0123456789-.\\")) {
            while (inside.end < end && !ttc_is_one_of(*inside.end, " \n\t\r$")) { inside.end++; }
        }
        if (ttc_trimmed(inside).at < inside.end) { found = inside; }
    }
    return found;
}

/* What parts words: white space, <tags>, <<9*2=18>> (a calculator's note), "|", dashes, quotes and arrows
 * that are no ASCII, and scripts from U+3000 on and pictures, which are not written
 * in words. Its size, or 0. */
static size_t ttc_gap(const char *at, const char *end) {
    const unsigned char *c = (const unsigned char *)at;
    size_t n = (size_t)(end - at), i;
    if (ttc_is_space(*at) || *at == '|') { return 1; }
    if (*at == '<' && n > 2 && (at[1] == '/' || at[1] == '|' || ttc_is_letter(at[1]))) {
        for (i = 2; i < n && i < 32 && !ttc_is_space(at[i]); i++) {
            if (at[i] == '>') { return i + 1; }
        }
    }
    if (ttc_begins(at, end, "<<")) {
        for (i = 2; i + 1 < n && i < TTC_REACH && at[i] != '\n'; i++) {
            if (at[i] == '>' && at[i + 1] == '>') { return i + 2; }
        }
    }
    if (n > 1 && c[0] == 0xC2 && (c[1] == 0xA0 || c[1] == 0xAB || c[1] == 0xBB)) { return 2; }
    if (n > 2 && c[0] == 0xE2 &&
        ((c[1] == 0x80 && (c[2] < 0x90 || c[2] > 0x93)) || c[1] == 0x86 || c[1] == 0x87)) {
        return 3;
    }
    return n > 2 && c[0] >= 0xE3 ? (c[0] >= 0xF0 && n > 3 ? 4 : 3) : 0;
}

/* The size of $...$, \(...\) or \[...\] on one line; 0 for another thing. A dollar sign before an amount is
 * no such bracket: these stand at their text without white space, and no digit follows the last. */
static size_t ttc_math(const char *at, const char *end) {
    static const char *const opens[] = {"$$", "$", "\\(", "\\["}, *const closes[] = {"$$", "$", "\\)", "\\]"};
    const char *close, *to;
    size_t k, n = ttc_one_of(at, end, opens, 4, &k);
    if (n == 0) { return 0; }
    close = closes[k];
    if (n == 1 && (end - at < 2 || ttc_is_space(at[1]))) { return 0; }
    end = ttc_reach(at, end);
    for (to = at + n; to < end && *to != '\n'; to++) {
        if (*to == '\\' && !ttc_begins(to, end, close)) {      /* \$ ends nothing */
            to++;
            continue;
        }
        if (!ttc_begins(to, end, close) || to == at + n) { continue; }
        if (n == 1 && (ttc_is_space(to[-1]) || (to + 1 < end && ttc_is_digit(to[1])))) { return 0; }
        return (size_t)(to - at) + n;
    }
    return 0;
}

/* A word may hold gaps in braces and in mathematics. */
static const char *ttc_word_end(const char *at, const char *end) {
    while (at < end && ttc_gap(at, end) == 0) {
        size_t n = ttc_math(at, end);
        if (n == 0 && *at == '{') { n = ttc_braces(at, ttc_reach(at, end)); }
        at += n ? n : 1;
    }
    return at;
}

/* How many more brackets are opened than closed; (3,4] is an interval. */
static int ttc_open_brackets(ttc_span s) {
    int depth = 0;
    for (; s.at < s.end; s.at++) { depth += ttc_is_one_of(*s.at, "([{") - ttc_is_one_of(*s.at, ")]}"); }
    return depth;
}

/* A word without the punctuation and the unmatched brackets around it: (3,4), is (3,4). */
static ttc_span ttc_bare(ttc_span s) {
    if (s.end - s.at > TTC_REACH) { return s; }
    for (; s.at < s.end; s.end--) {
        char c = s.end[-1];
        int unmatched = ttc_is_one_of(c, ")]}") && ttc_open_brackets(s) < 0;
        if (!unmatched && !ttc_is_one_of(c, ".,;:!?'\"*_`#\\")) { break; }
    }
    for (; s.at < s.end; s.at++) {
        char c = *s.at, next = s.end - s.at > 1 ? s.at[1] : 0;
        if (ttc_is_one_of(c, ",;:!?'\"*_`#") || (c == '.' && next == '.')) { continue; }
        if (ttc_is_one_of(c, "([{") && ttc_open_brackets(s) > 0) { continue; }
        if (c != '\\' || !ttc_is_one_of(next, "([") || ttc_open_brackets(s) <= 0) { break; }
    }
    /* [5] is 5, [0,1] an interval. */
    if (s.end - s.at > 2 && *s.at == '[' && s.end[-1] == ']' && !memchr(s.at, ',', ttc_size(s))) {
        return ttc_bare(ttc_span_of(s.at + 1, s.end - 1));
    }
    return s;
}

/* What follows the last "=" of a word (x=5), or a colon after a letter; $...$ stays whole. */
static ttc_span ttc_after_sign(ttc_span word) {
    const char *at;
    size_t size = ttc_size(word);
    if (size > TTC_REACH || ttc_math(word.at, word.end) == size) { return word; }
    for (at = word.end - 1; at > word.at; at--) {
        int equals = *at == '=' && !ttc_is_one_of(at[-1], "<>!");
        ttc_span rest = ttc_span_of(at + 1, word.end);
        if (equals && *word.at == '-') { equals = ttc_has_digit(ttc_span_of(word.at, at)); }   /* not -x=5 */
        if (!equals && (*at != ':' || ttc_is_digit(at[-1]))) { continue; }
        if (ttc_has_digit(rest)) { return ttc_bare(ttc_trimmed(rest)); }
    }
    return *word.at == '=' ? ttc_span_of(word.at + 1, word.end) : word;
}

/* A digit in a word that is no name (H2O), or a command or $...$ with a value (\pi). */
static int ttc_is_numeric(ttc_span word) {
    const char *at = word.at;
    ttc_answer a;
    if (ttc_has_digit(word)) {
        while (at < word.end && (ttc_is_letter(*at) || ttc_is_digit(*at))) { at++; }
        return at < word.end || ttc_is_digit(*word.at);
    }
    if (word.at == word.end || (*word.at != '\\' && ttc_math(word.at, word.end) == 0)) { return 0; }
    ttc_answer_read(word, &a);
    return a.is_number;
}

static int ttc_all_digits(ttc_span s) {
    ttc_span rest = s;
    while (rest.at < rest.end && ttc_is_digit(*rest.at)) { rest.at++; }
    return s.at < s.end && rest.at == s.end;
}

static int ttc_span_is(ttc_span s, const char *text) {
    return ttc_size(s) == strlen(text) && memcmp(s.at, text, strlen(text)) == 0;
}

static int ttc_span_is_of(ttc_span s, const char *const *words, size_t n) {
    size_t k;
    for (k = 0; k < n; k++) {
        if (ttc_span_is(s, words[k])) { return 1; }
    }
    return 0;
}

/* How many of the words before a number are part of it; before[0] is the nearest. */
static int ttc_words_before(ttc_span number, const ttc_span *before) {
    static const char *const times[] = {"*", "x", "\xC3\x97", "\\times", "\\cdot"};
    const char *slash = (const char *)memchr(number.at, '/', ttc_size(number));
    ttc_span whole = before[0], head = number;
    int k = 0;
    whole.at += ttc_begins(whole.at, whole.end, "-");
    if (ttc_begins(number.at, number.end, "10^") && ttc_span_is_of(before[0], times, TTC_COUNT(times))) {
        return 2;
    }
    if (ttc_span_is(before[0], "/") && ttc_all_digits(before[1]) && ttc_all_digits(number)) { return 2; }
    if ((ttc_begins(number.at, number.end, "\\") || ttc_is_one_sign(number)) && ttc_all_digits(whole)) {
        return 1;
    }
    if (slash && ttc_all_digits(whole) && ttc_all_digits(ttc_span_of(number.at, slash)) &&
        ttc_all_digits(ttc_span_of(slash + 1, number.end))) {
        return 1;
    }
    if (ttc_size(number) > 3 && number.at[3] == '.') { head.end = number.at + 3; }
    if (ttc_size(head) != 3 || !ttc_all_digits(head)) { return 0; }
    while (k < TTC_WORDS && ttc_all_digits(before[k]) && ttc_size(before[k]) == 3) { k++; }
    return k + (ttc_all_digits(before[k]) && ttc_size(before[k]) < 3 && *before[k].at != '0');
}

/* The number with the words before it that belong to it: "3 / 4", "1.5 x 10^5", "2 2/3", "1 234 567", and "-
 * 3" where the sign does not stand between two numbers. */
static ttc_span ttc_extend_left(ttc_span number, const ttc_span *before) {
    static const char *const signs[] = {
        "-", "\xE2\x88\x92", "\xE2\x80\x93", "minus", "negative", "\xC2\xB1", "\\pm"
    };
    int k = ttc_words_before(number, before);
    if (k > 0) { number.at = before[k - 1].at; }
    if (k < TTC_WORDS && ttc_span_is_of(before[k], signs, TTC_COUNT(signs))) {
        ttc_span left = before[k + 1];
        char last = left.at < left.end ? left.end[-1] : ' ';
        if (!ttc_is_digit(last) && !ttc_is_one_of(last, ")]}%$")) { number.at = before[k].at; }
    }
    return number;
}

/* ... and with what belongs to it behind: commands (8 \pi, 5 \text{ cm}), and what is always a unit (3
 * million, 5 km). */
static ttc_span ttc_extend_right(ttc_span number, const char *end) {
    static const char *const units[] = {
        "hundred", "thousand", "million", "billion", "trillion", "percent", "cm", "mm", "km", "kg", "mg",
        "ml", "mL"
    };
    const char *at = number.end;
    ttc_span next;
    while (at < end && *at == ' ') { at++; }
    next = ttc_bare(ttc_span_of(at, ttc_word_end(at, end)));
    if (at == number.end || next.at != at) { return number; }
    if (ttc_begins(at, end, "\\") && ttc_letters(at + 1, end) > 0) {
        return ttc_extend_right(ttc_span_of(number.at, next.end), end);
    }
    if (ttc_span_is_of(next, units, TTC_COUNT(units))) { number.end = next.end; }
    return number;
}

/* "(3," and "4)": the bracket of which the word is the end, if it has a comma and no words. raw: the word
 * with its punctuation; begin: of the text. */
static ttc_span ttc_whole_bracket(ttc_span number, ttc_span raw, const char *begin) {
    const char *at = number.at, *close = number.end;
    int depth = 1, commas = 0;
    while (close < raw.end && !ttc_is_one_of(*close, ")]")) { close++; }
    if (close >= raw.end) { return number; }
    if (at - begin > TTC_REACH) { begin = at - TTC_REACH; }
    while (at > begin && depth > 0 && at[-1] != '\n') {
        int word = ttc_is_letter(at[-1]) && (at - begin < 2 || (!ttc_is_letter(at[-2]) && at[-2] != '\\'));
        if (word) { break; }
        at--;
        depth += ttc_is_one_of(*at, ")]") - ttc_is_one_of(*at, "([");
        commas += *at == ',';
    }
    return depth == 0 && commas > 0 ? ttc_span_of(at, close + 1) : number;
}

/* The last number of a text and what belongs to it; n: how many numbers there are. words: those before,
 * nearest first. */
static ttc_span ttc_last_number(ttc_span text, int *n) {
    ttc_span words[TTC_WORDS + 1], found = {NULL, NULL};
    const char *at = text.at;
    int k;
    *n = 0;
    for (k = 0; k <= TTC_WORDS; k++) { words[k] = ttc_span_of(text.at, text.at); }
    while (at < text.end) {
        ttc_span raw, word;
        size_t gap = ttc_gap(at, text.end);
        if (gap > 0) {
            at += gap;
            continue;
        }
        raw = ttc_span_of(at, ttc_word_end(at, text.end));
        word = ttc_bare(raw);
        at = raw.end;
        if (word.at < word.end && ttc_is_numeric(word)) {
            found = ttc_after_sign(word);
            if (found.at == raw.at) { found = ttc_extend_left(found, words); }
            if (word.end == raw.end) { found = ttc_extend_right(found, text.end); }
            found = ttc_whole_bracket(found, raw, text.at);
            ++*n;
        }
        memmove(words + 1, words, TTC_WORDS * sizeof *words);
        words[0] = raw;
    }
    return found;
}

/* The rest of a line, up to a tag. */
static ttc_span ttc_line_of(ttc_span s) {
    const char *end = s.at;
    while (end < s.end && *end != '\n' && (*end != '<' || ttc_gap(end, s.end) == 0)) { end++; }
    return ttc_trimmed(ttc_span_of(s.at, end));
}

/* A word of two letters is there that is no command. */
static int ttc_has_words(ttc_span s) {
    for (; s.at < s.end; s.at++) {
        int n = ttc_letters(s.at + (*s.at == '\\'), s.end);
        if (n > 1 && *s.at != '\\') { return 1; }
        s.at += n;
    }
    return 0;
}

/* The answer in a line that is one: the whole, or what follows a colon, or the only number among words. */
static ttc_span ttc_line_answer(ttc_span line) {
    ttc_answer a;
    ttc_span found;
    const char *at;
    int n;
    ttc_answer_read(line, &a);
    if (a.is_number || !ttc_has_words(line)) { return line; }
    for (at = line.end - 1; at > line.at && *at != ':'; at--) { }
    if (at > line.at && !ttc_is_digit(at[-1])) {
        return ttc_bare(ttc_trimmed(ttc_span_of(at + 1, line.end)));
    }
    found = ttc_last_number(line, &n);
    return n == 1 ? found : line;
}

/* "Answer", "answer", "ANSWER": is it said in the line? */
static int ttc_says_answer(ttc_span line) {
    for (; line.at < line.end; line.at++) {
        if (ttc_begins(line.at, line.end, "nswer") || ttc_begins(line.at, line.end, "NSWER")) { return 1; }
    }
    return 0;
}

/* After the last "####" that something follows. A line that says "answer" and no more is a heading; where a
 * number is sought, so is every line that is none. Then the answer is the next line, or the last number
 * below. */
static ttc_span ttc_hashed(ttc_span text, int number) {
    ttc_span none = {NULL, NULL}, line, rest;
    ttc_answer a;
    const char *at;
    int n, heading;
    for (at = text.end; at > text.at; at--) {
        if (!ttc_begins(at - 1, text.end, "####")) { continue; }
        if (ttc_trimmed(ttc_span_of(at + 3, text.end)).at < text.end) { break; }
    }
    if (at == text.at) { return none; }
    for (at += 3; at < text.end && *at == '#'; at++) { }
    line = ttc_line_of(ttc_span_of(at, text.end));
    rest = ttc_trimmed(ttc_span_of(line.end, text.end));
    line = ttc_bare(line);
    if (rest.at == rest.end) { return ttc_line_answer(line); }
    heading = ttc_says_answer(line) && !ttc_has_digit(line) && !memchr(line.at, ':', ttc_size(line));
    if (heading || line.at == line.end) { return ttc_line_answer(ttc_bare(ttc_line_of(rest))); }
    ttc_answer_read(line, &a);
    if (!number || a.is_number || ttc_says_answer(line)) { return ttc_line_answer(line); }
    rest = ttc_last_number(rest, &n);
    return n > 0 ? rest : ttc_line_answer(line);
}

/* The end of the last line, from "is", ":" or $...$ on: where an answer that is no number is looked for. */
static ttc_span ttc_last_words(ttc_span text) {
    static const char *const signs[] = {" is ", " are ", ": "};
    const char *at, *from;
    size_t k, n;
    int words = 0;
    text = ttc_trimmed(text);
    for (from = text.end; from > text.at && from[-1] != '\n'; from--) { }
    for (at = from; at < text.end; at += n ? n : 1) {
        n = ttc_math(at, text.end);
        if (n > 0 && words) { from = at; }
        words = n == 0 && (words || ttc_is_letter(*at));
        if (n > 0) { continue; }
        n = ttc_one_of(at, text.end, signs, 3, &k);
        if (n == 0) { continue; }
        from = at + n;
        words = 0;
    }
    return ttc_bare(ttc_trimmed(ttc_span_of(from, text.end)));
}

/* A word of letters and a blank stand before. */
static int ttc_follows_word(const char *begin, const char *at) {
    const char *word = at - 1;
    if (at == begin || *word != ' ') { return 0; }
    while (word > begin && ttc_is_letter(word[-1])) { word--; }
    return at - word > 2 && (word == begin || ttc_is_space(word[-1]));
}

/* ---- rewards by answer ---- */

/* The answer of a response in its place: a number if gold is one, or is NULL. */
static ttc_span ttc_answer_part(tt_answer_place place, ttc_span text, const ttc_answer *gold) {
    ttc_span found, last;
    ttc_answer a;
    int n, number = !gold || gold->is_number;
    if (place == TT_ANSWER_EXACT) { return ttc_trimmed(text); }
    if (place == TT_ANSWER_LAST_NUMBER) { return ttc_last_number(text, &n); }
    found = ttc_boxed(text);
    if (place == TT_ANSWER_BOXED || found.at) { return found; }
    found = ttc_hashed(text, number);
    if (found.at) { return found; }
    last = ttc_last_number(text, &n);
    if (number) { return last; }
    if (!last.at || !ttc_follows_word(text.at, last.at)) { return ttc_last_words(text); }
    ttc_answer_read(last, &a);      /* "at (3, 4)": a number behind a word may be all of it */
    return ttc_answers_equal(gold, &a) ? last : ttc_last_words(text);
}

/* Of a gold answer: the whole, or what is in its box or follows "####". */
static ttc_span ttc_gold_part(tt_answer_place place, ttc_span text) {
    ttc_span found = {NULL, NULL};
    int n;
    if (place == TT_ANSWER_LAST_NUMBER) { return ttc_last_number(text, &n); }
    if (place != TT_ANSWER_EXACT) { found = ttc_boxed(text); }
    if (place == TT_ANSWER_ANY && !found.at) { found = ttc_hashed(text, 1); }
    return found.at ? found : ttc_trimmed(text);
}

/* In normal form; what was too long to be read, as it stands. */
static tt_status ttc_answer_append(const ttc_answer *a, ttc_span part, tt_text *out) {
    if (!out || !part.at) { return TT_OK; }
    if (a->too_long) { return tt_text_append(out, part.at, ttc_size(part)); }
    return tt_text_append(out, a->text, a->size);
}

/* What stands in a place; read, but for "exact", where it is compared as it stands. */
static void ttc_part_read(tt_answer_place place, ttc_span part, ttc_answer *a) {
    memset(a, 0, sizeof *a);
    a->too_long = 1;
    if (place != TT_ANSWER_EXACT && part.at) { ttc_answer_read(part, a); }
}

static inline tt_status tt_answer_grade(tt_answer_place place, const tt_reward_input *in, float *reward,
                                        tt_text *gold_form, tt_text *said_form) {
    ttc_span gold = ttc_gold_part(place, ttc_text(in->answer)), said;
    ttc_answer a, b;
    int right = 0;
    tt_status status;
    ttc_part_read(place, gold, &a);
    said = ttc_answer_part(place, ttc_response(in), &a);
    ttc_part_read(place, said, &b);
    if (gold.at && said.at && gold.at < gold.end) {
        right = a.too_long || b.too_long ? ttc_same_text(gold, said) : ttc_answers_equal(&a, &b);
    }
    *reward = ttc_if_stopped(in, right);
    status = ttc_answer_append(&a, gold, gold_form);
    return status == TT_OK ? ttc_answer_append(&b, said, said_form) : status;
}

static inline tt_status tt_reward_exact(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    return tt_answer_grade(TT_ANSWER_EXACT, in, reward, NULL, NULL);
}

static inline tt_status tt_reward_last_number(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    return tt_answer_grade(TT_ANSWER_LAST_NUMBER, in, reward, NULL, NULL);
}

static inline tt_status tt_reward_boxed(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    return tt_answer_grade(TT_ANSWER_BOXED, in, reward, NULL, NULL);
}

static inline tt_status tt_reward_answer(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    return tt_answer_grade(TT_ANSWER_ANY, in, reward, NULL, NULL);
}

static inline tt_status tt_extract_answer(void *user, const tt_reward_input *in, tt_text *answer) {
    ttc_span part = ttc_answer_part(TT_ANSWER_ANY, ttc_response(in), NULL);
    ttc_answer a;
    (void)user;
    if (!part.at) { return TT_OK; }
    ttc_answer_read(part, &a);
    a.size = a.unit;      /* 5 and 5 km are one vote */
    return ttc_answer_append(&a, part, answer);
}

/* ---- countdown: expressions of whole numbers, + - * /, round brackets and white space ---- */

/* What stands behind the last place of a word; NULL if it does not occur. */
static const char *ttc_behind_last(const char *text, const char *word) {
    const char *found = NULL, *at = text;
    while ((at = strstr(at, word)) != NULL) { found = at += strlen(word); }
    return found;
}

static ttc_span ttc_up_to(ttc_span s, const char *stop) {
    const char *at;
    for (at = s.at; at < s.end; at++) { if (ttc_is_one_of(*at, stop)) { return ttc_span_of(s.at, at); } }
    return s;
}

/* Where a response without a box has its expression: in the last <answer> tags, after the last word "answer",
 * else the whole; up to the end of the line. */
static ttc_span ttc_expression_line(const char *text) {
    const char *tag = ttc_behind_last(text, "<answer>"), *word = ttc_behind_last(text, "answer"), *close;
    ttc_span s = ttc_text(tag ? tag : word ? word : text);
    close = strstr(s.at, "</answer>");
    if (close) { s.end = close; }
    while (s.at < s.end && (ttc_is_space(*s.at) || *s.at == ':')) { s.at++; }
    return ttc_up_to(s, "\n");
}

/* The expression of a response: up to "=", without full stops and dollars around it. */
static ttc_span ttc_expression_part(const char *text) {
    ttc_span s = ttc_boxed(ttc_text(text));
    if (!s.at) { s = ttc_expression_line(text); }
    s = ttc_trimmed(ttc_up_to(s, "="));
    while (s.at < s.end && ttc_is_one_of(s.end[-1], ".$")) { s.end--; }
    while (s.at < s.end && *s.at == '$') { s.at++; }
    return s;
}

/* The numbers that may be used: those in the last [...] of the question, else after its last "from", else
 * all. */
static int ttc_question_numbers(const char *question, double *numbers) {
    const char *at = strrchr(question, '['), *end = at ? strchr(at, ']') : NULL;
    const char *from = ttc_behind_last(question, "from");
    int n = 0;
    if (!end) {
        at = from ? from : question;
        end = at + strlen(at);
    }
    while (at < end && n < TTC_NUMBERS) {
        if (!ttc_is_digit(*at)) {
            at++;
            continue;
        }
        for (numbers[n] = 0; at < end && ttc_is_digit(*at); at++) {
            numbers[n] = numbers[n] * 10 + *at - '0';
        }
        n++;
    }
    return n;
}

static int ttc_by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The same numbers, each as often; sorts both. */
static int ttc_same_numbers(double *a, int n, double *b, int m) {
    if (n != m) { return 0; }
    qsort(a, (size_t)n, sizeof *a, ttc_by_value);
    qsort(b, (size_t)m, sizeof *b, ttc_by_value);
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

static inline tt_status tt_reward_countdown(void *user, const tt_reward_input *in, float *reward) {
    ttc_span gold = ttc_expression_part(in->answer), said = ttc_expression_part(in->response);
    double numbers[TTC_NUMBERS];
    ttc_value target, value;
    ttc_answer plain;
    ttc_reader r;
    int n = ttc_question_numbers(in->question, numbers), right;
    (void)user;
    *reward = (float)NAN;      /* a question without a target scores nobody */
    if (n == 0 || !ttc_read_value(gold, 1, &r, &target)) { return TT_OK; }
    memset(&plain, 0, sizeof plain);
    ttc_answer_plain(&plain, said, 0);      /* \times and its like */
    right = !plain.too_long && ttc_read_value(ttc_written(&plain), 1, &r, &value) &&
            ttc_value_equal(&value, &target);
    *reward = ttc_if_stopped(in, right && ttc_same_numbers(numbers, n, r.numbers, r.n_numbers));
    return TT_OK;
}

static inline tt_status tt_extract_expression(void *user, const tt_reward_input *in, tt_text *answer) {
    ttc_answer a;
    (void)user;
    memset(&a, 0, sizeof a);
    ttc_answer_plain(&a, ttc_expression_part(in->response), 0);
    return a.too_long ? TT_OK : tt_text_append(answer, a.text, a.size);
}

/* ---- rewards by form ---- */

/* * matches any text, also none: the shortest run that lets the rest match. */
static int ttc_glob(const char *pattern, const char *text, const char *end) {
    const char *star = NULL, *resume = text;
    while (text < end) {
        if (*pattern == '*') {
            star = ++pattern;
            resume = text;
        } else if (*pattern && *pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star;
            text = ++resume;
        } else {
            return 0;
        }
    }
    while (*pattern == '*') { pattern++; }
    return *pattern == 0;
}

static inline tt_status tt_reward_format(void *user, const tt_reward_input *in, float *reward) {
    ttc_span s = ttc_trimmed(ttc_response(in));
    *reward = ttc_if_stopped(in, ttc_glob((const char *)user, s.at, s.end));
    return TT_OK;
}

static inline tt_status tt_reward_think_format(void *user, const tt_reward_input *in, float *reward) {
    static const char *const tag = "<think>";
    const char *first = strstr(in->response, tag);
    int begins = first == in->response;
    (void)user;
    *reward = ttc_if_stopped(in, begins && !strstr(first + 1, tag) && strstr(first, "</think>"));
    return TT_OK;
}

/* ---- rewards by length ---- */

/* n-gram i has not stood at an earlier place. */
static int ttc_is_new_ngram(const int32_t *tokens, int i, int size) {
    size_t bytes = (size_t)size * sizeof *tokens;
    int k;
    for (k = 0; k < i; k++) {
        if (tokens[k] == tokens[i] && memcmp(tokens + k, tokens + i, bytes) == 0) { return 0; }
    }
    return 1;
}

static inline tt_status tt_reward_repetition(void *user, const tt_reward_input *in, float *reward) {
    const tt_repetition *given = (const tt_repetition *)user;
    int size = given && given->ngram_size ? given->ngram_size : 3, n = in->n_tokens - size + 1, different = 0,
        i;
    double most = given && given->max_penalty != 0 ? (double)given->max_penalty : -1;
    *reward = 0;
    if (size < 1 || most > 0) { return TT_ERR_ARG; }
    for (i = 0; i < n; i++) { different += ttc_is_new_ngram(in->tokens, i, size); }
    if (different < n) { *reward = (float)(most * (1 - (double)different / n)); }
    return TT_OK;
}

/* longest + (shortest - longest) (1 + cos(pi length / max_length)) / 2, shortest and longest being the values
 * of a response of no tokens and of max_length. */
static inline tt_status tt_reward_cosine(void *user, const tt_reward_input *in, float *reward) {
    tt_cosine c = *(const tt_cosine *)user;
    double share, shortest, longest;
    tt_status status;
    if (c.max_length < 1) { return TT_ERR_ARG; }
    if (c.min_value_wrong == 0 && c.max_value_wrong == 0 && c.min_value_correct == 0 &&
        c.max_value_correct == 0) {
        c.min_value_wrong = -1;
        c.max_value_wrong = -0.5f;
        c.min_value_correct = 0.5f;
        c.max_value_correct = 1;
    }
    status = (c.reward ? c.reward : tt_reward_answer)(c.user, in, reward);
    if (status != TT_OK || isnan(*reward)) { return status; }
    share = in->n_tokens < c.max_length ? (double)in->n_tokens / c.max_length : 1;
    shortest = (double)(*reward > 0.5f ? c.max_value_correct : c.min_value_wrong);
    longest = (double)(*reward > 0.5f ? c.min_value_correct : c.max_value_wrong);
    *reward = (float)(longest + 0.5 * (shortest - longest) * (1 + cos(share * 3.141592653589793)));
    return TT_OK;
}

#endif
