/* chat.h - the text of a conversation in ChatML, the template of SmolLM2, Qwen and many others:
 *
 *     <|im_start|>user
 *     Hello<|im_end|>
 *     <|im_start|>assistant
 *
 * Shared by generate.c and sft.c. Include it after thinktuning.h and options.h. */
#ifndef CHAT_H
#define CHAT_H

typedef struct chat_message { const char *role, *content; } chat_message;

/* The tokens of the template must be tokens of the model, else it never saw them as such. */
static tt_status chat_check(tt_context *ctx, const tt_tokenizer *tokenizer) {
    static const char *const marks[] = {"<|im_start|>", "<|im_end|>"};
    int i;
    for (i = 0; i < 2; i++) {
        if (tt_token_id(tokenizer, marks[i]) < 0)
            return tt_fail(ctx, TT_ERR_ARG, "chat: the tokenizer has no token %s, so the model does not speak ChatML", marks[i]);
    }
    return TT_OK;
}

/* Appends messages[0..n); add_generation_prompt: and the head of the assistant's answer. */
static tt_status chat_render(tt_text *out, const chat_message *messages, int n, int add_generation_prompt) {
    tt_status status = TT_OK;
    int i;
    for (i = 0; i < n && status == TT_OK; i++)
        status = tt_text_format(out, "<|im_start|>%s\n%s<|im_end|>\n", messages[i].role, messages[i].content);
    return status == TT_OK && add_generation_prompt ? tt_text_format(out, "<|im_start|>assistant\n") : status;
}

#endif
