/* A second translation unit of test_header: sees the declarations only, twice. */
#include "../thinktuning.h"
#include "../thinktuning.h"

int header_second_sum(int a, int b);

/* Creates, uses and destroys a context of the implementation that stands in test_header.c. -1 on failure. */
int header_second_sum(int a, int b) {
    tt_context *ctx = tt_create(NULL);
    int sum = -1;
    if (ctx) {
        double value = tt_item(tt_add(ctx, tt_scalar(ctx, (float)a), tt_scalar(ctx, (float)b)));
        if (tt_eval(ctx) == TT_OK) sum = (int)value;
    }
    tt_destroy(ctx);
    return sum;
}
