/* logprobs DIR: token ids from standard input; the log-probability of each but the first given those before it, a line each. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

int main(int argc, char **argv) {
    tt_context *ctx = tt_create(NULL);
    tt_model *m = ctx && argc == 2 ? tt_model_load(ctx, argv[1]) : NULL;
    tt_ids ids = TT_INIT;
    tt_batch_desc text = TT_INIT;
    tt_tensor *logprobs = NULL;
    int32_t offsets[2] = {0, 0};
    int id, i;
    ids.ctx = ctx;
    while (m && scanf("%d", &id) == 1) {
        const int32_t one = id;
        if (tt_ids_append(&ids, &one, 1) != TT_OK) break;
    }
    offsets[1] = (int32_t)ids.size;
    text.n_sequences = 1;
    text.offsets = offsets;
    text.tokens = ids.data;
    if (m) {
        tt_no_grad_begin(ctx);
        logprobs = tt_model_logprobs(m, tt_batch_create(ctx, &text), 1, NULL);
        tt_no_grad_end(ctx);
    }
    if (!logprobs) {
        fprintf(stderr, "logprobs: %s\n", argc == 2 ? tt_error(ctx) : "expected a model directory");
        return 2;
    }
    for (i = 0; i + 1 < offsets[1]; i++) printf("%.9g\n", (double)TT_F(logprobs)[i]);
    tt_ids_free(&ids);
    tt_model_destroy(m);
    tt_destroy(ctx);
    return 0;
}
