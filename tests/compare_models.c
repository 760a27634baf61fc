/* compare_models A B: the distance of the weights of two model directories, |a - b| / |a| over all of them, on stdout. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

int main(int argc, char **argv) {
    tt_context *ctx = tt_create(NULL);
    tt_model *a = ctx && argc == 3 ? tt_model_load(ctx, argv[1]) : NULL, *b = a ? tt_model_load(ctx, argv[2]) : NULL;
    double apart = 0, size = 0;
    size_t k;
    int i;
    if (!b || tt_model_size(a) != tt_model_size(b) || tt_model_n_params(a) != tt_model_n_params(b)) {
        fprintf(stderr, "compare_models: %s\n", b ? "the models differ in shape" : argc == 3 ? tt_error(ctx) : "expected two directories");
        return 2;
    }
    for (i = 0; i < tt_model_n_params(a); i++) {
        const tt_tensor *p = tt_model_param(a, i), *q = tt_model_param(b, i);
        for (k = 0; k < p->size && k < q->size; k++) {
            double x = (double)TT_F(p)[k], y = (double)TT_F(q)[k];
            apart += (x - y) * (x - y);
            size += x * x;
        }
    }
    printf("%.3e\n", sqrt(apart / size));
    tt_model_destroy(a);
    tt_model_destroy(b);
    tt_destroy(ctx);
    return 0;
}
