/* A third translation unit of test_header: a private copy of the whole library beside the shared one. */
#define TT_STATIC
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

int header_static_sum(int a, int b);
uint64_t header_static_random(uint64_t seed);

int header_static_sum(int a, int b) {
    tt_context *ctx = tt_create(NULL);
    int sum = -1;
    if (ctx) {
        double value = tt_item(tt_add(ctx, tt_scalar(ctx, (float)a), tt_scalar(ctx, (float)b)));
        if (tt_eval(ctx) == TT_OK) sum = (int)value;
    }
    tt_destroy(ctx);
    return sum;
}

uint64_t header_static_random(uint64_t seed) { return tt_random(seed, 1, 2); }
