/* rollouts.h - rollouts that no model wrote, and numbers of a JSON file, for the tests of chapter 11.
 * Include it behind thinktuning.h. */
#ifndef TT_TEST_ROLLOUTS_H
#define TT_TEST_ROLLOUTS_H

#include <math.h>
#include <string.h>

enum { MAX_ROWS = 16, MAX_LENGTH = 16 };

/* n_groups prompts of two tokens, `size` responses to each: lengths[i] tokens, of which the last is the end
 * token. The sampler's log-probs are 0. */
static inline tt_status make_rollouts(tt_context *ctx, int n_groups, int size, const int *lengths,
                                      int end_token, tt_rollouts *out) {
    static const int32_t prompt[2] = {0, 3};
    int32_t tokens[MAX_ROWS][MAX_LENGTH];
    float logprobs[MAX_LENGTH] = {0};
    tt_request requests[MAX_ROWS];
    tt_completion items[MAX_ROWS];
    tt_completions all = TT_INIT;
    int i, t;
    memset(requests, 0, sizeof requests);
    memset(items, 0, sizeof items);
    for (i = 0; i < n_groups; i++) {
        requests[i].prompt = prompt;
        requests[i].prompt_length = 2;
    }
    for (i = 0; i < n_groups * size; i++) {
        for (t = 0; t < lengths[i]; t++) { tokens[i][t] = t + 1 < lengths[i] ? 3 + (i + t) % 6 : end_token; }
        items[i].request = i / size;
        items[i].sample = i % size;
        items[i].length = lengths[i];
        items[i].tokens = tokens[i];
        items[i].logprobs = logprobs;
    }
    all.ctx = ctx;
    all.n = n_groups * size;
    all.items = items;
    return tt_rollouts_create(ctx, requests, n_groups, &all, end_token, out);
}

static inline const tt_json *element(const tt_json *array, int i) {
    const tt_json *at = array ? array->child : NULL;
    while (at && i-- > 0) { at = at->next; }
    return at;
}

/* NaN, which no check is near to, where there is no number. */
static inline double value(const tt_json *array, int i) {
    const tt_json *at = element(array, i);
    return at && at->type == TT_JSON_NUMBER ? at->number : (double)NAN;
}

static inline double value2(const tt_json *array, int i, int j) { return value(element(array, i), j); }

#endif
