// The whole header as C++11, with its companions: compiles, links, trains one step of a small model.
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "../examples/losses.h"
#include "../examples/tasks.h"
#include "../examples/evaluate.h"
#include "tt_test.h"

TT_TEST(cpp_zero_descriptions) {
    tt_desc desc = TT_INIT;
    tt_sampling sampling = TT_INIT;
    TT_CHECK(desc.backend == NULL);
    TT_CHECK_INT(sampling.top_k, 0);
}

TT_TEST(cpp_gradient) {
    tt_context *ctx = tt_create(NULL);
    TT_REQUIRE(ctx != NULL);
    tt_tensor *x = tt_scalar(ctx, 3.0f);
    TT_REQUIRE(x != NULL);
    x->requires_grad = 1;
    TT_CHECK_OK(ctx, tt_backward(ctx, tt_mul(ctx, x, x)));
    float dx = 0;
    TT_CHECK_OK(ctx, tt_tensor_get_grad(x, &dx));
    TT_CHECK_NEAR(dx, 6, 0);
    tt_destroy(ctx);
}

TT_TEST(cpp_model_step) {
    tt_context *ctx = tt_create(NULL);
    TT_REQUIRE(ctx != NULL);
    tt_model_config config = TT_INIT;
    config.vocab_size = 16;
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    tt_model *model = tt_model_create(ctx, &config, 1);
    TT_REQUIRE(model != NULL);
    const int32_t tokens[] = {1, 2, 3, 4}, offsets[] = {0, 4};
    tt_batch_desc desc = TT_INIT;
    desc.n_sequences = 1;
    desc.offsets = offsets;
    desc.tokens = tokens;
    tt_tensor *loss = tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &desc), 1.0f, NULL)));
    TT_CHECK_OK(ctx, tt_backward(ctx, loss));
    TT_CHECK(tt_item(loss) > 0);
    tt_model_destroy(model);
    tt_destroy(ctx);
}

TT_TEST(cpp_companions) {
    tt_context *ctx = tt_create(NULL);
    TT_REQUIRE(ctx != NULL);
    tt_signs *signs = tt_signs_create(ctx, NULL);
    TT_REQUIRE(signs != NULL);
    tt_task task = tt_task_signs(signs);
    tt_text question = TT_INIT, answer = TT_INIT;
    question.ctx = answer.ctx = ctx;
    TT_CHECK_OK(ctx, task.question(task.user, 0, 0, &question, &answer));
    tt_reward_input in = TT_INIT;
    in.question = question.data;
    in.answer = in.response = answer.data;
    in.response_size = answer.size;
    in.stopped = 1;
    float reward = 0;
    TT_CHECK_OK(ctx, task.reward(task.user, &in, &reward));
    TT_CHECK_NEAR(reward, 1, 0);
    TT_CHECK_INT(tt_answer_equal("1/2", 3, "0.5", 3), 1);
    TT_CHECK_NEAR(tt_pass_at_k(4, 1, 2), 0.5, 1e-12);
    tt_text_free(&question);
    tt_text_free(&answer);
    tt_signs_destroy(signs);
    tt_destroy(ctx);
}

TT_MAIN(cpp_zero_descriptions, cpp_gradient, cpp_model_step, cpp_companions)
