/* generate.c - text from a model directory, printed as it is sampled.
 *
 * Shows: loading a Hugging Face directory, encoding a prompt, the sampling controls, the on_token callback.
 *
 *     cc -O2 examples/generate.c -o build/generate -lm                   (or: make examples)
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --top-p 0.95
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --greedy --ids
 *
 * The same seed gives the same text. With --n above 1 the samples are drawn together and printed at the end. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

static void fail(const tt_context *ctx) { example_exit(1, "generate: %s", tt_error(ctx)); }

/* A token may hold part of a character, which decodes as U+FFFD until the rest comes: so the whole response is
 * decoded again and what is new is printed, without such a tail. */
typedef struct stream {
    const tt_tokenizer *tokenizer;
    tt_ids ids;
    size_t printed;
    int as_ids;
} stream;

static void stream_print(stream *s, int last) {
    tt_text text = TT_INIT;
    size_t end;
    text.ctx = s->ids.ctx;
    if (tt_decode(s->tokenizer, s->ids.data, s->ids.size, 1, &text) != TT_OK) fail(text.ctx);
    end = text.size;
    while (!last && end >= 3 && memcmp(text.data + end - 3, "\xEF\xBF\xBD", 3) == 0) end -= 3;
    if (end > s->printed) {
        fwrite(text.data + s->printed, 1, end - s->printed, stdout);
        fflush(stdout);
        s->printed = end;
    }
    tt_text_free(&text);
}

static int on_token(void *user, int request, int sample, int32_t token, float logprob) {
    stream *s = (stream *)user;
    (void)request, (void)sample, (void)logprob;
    if (s->as_ids) {
        printf("%s%d", s->ids.size ? " " : "", (int)token);
        fflush(stdout);
    }
    if (tt_ids_append(&s->ids, &token, 1) != TT_OK) return 1;
    if (!s->as_ids) stream_print(s, 0);
    return ferror(stdout);   /* whoever closed the pipe wants no more */
}

static void print_completion(tt_context *ctx, const tt_tokenizer *tokenizer, const tt_completion *c, int as_ids) {
    tt_text text = TT_INIT;
    int i;
    text.ctx = ctx;
    printf("---- sample %d: %d tokens, %s\n", c->sample, c->length, c->stopped ? "stopped" : "cut at --max-tokens");
    for (i = 0; as_ids && i < c->length; i++) printf("%s%d", i ? " " : "", (int)c->tokens[i]);
    if (!as_ids) {
        if (tt_decode(tokenizer, c->tokens, (size_t)c->length, 1, &text) != TT_OK) fail(ctx);
        fwrite(text.data, 1, text.size, stdout);
    }
    printf("\n");
    tt_text_free(&text);
}

int main(int argc, char **argv) {
    const char *dir = NULL, *prompt = NULL, *stop = NULL;
    tt_sampling sampling = TT_INIT;
    tt_request request = TT_INIT;
    int as_ids = 0;
    const option table[] = {
        {"--model", OPTION_REQUIRED, &dir, 0, 0, "model directory"},
        {"--prompt", OPTION_REQUIRED, &prompt, 0, 0, "text to continue"},
        {"--max-tokens", OPTION_INT, &sampling.max_new_tokens, 1, 1000000, "tokens to sample"},
        {"--temperature", OPTION_FLOAT, &sampling.temperature, 1e-6, 1000, "divides the logits"},
        {"--top-k", OPTION_INT, &sampling.top_k, 0, 1e9, "keep the k most likely tokens; 0 = all"},
        {"--top-p", OPTION_FLOAT, &sampling.top_p, 1e-9, 1, "keep the likeliest tokens of this total probability"},
        {"--min-p", OPTION_FLOAT, &sampling.min_p, 0, 1, "drop tokens below this share of the likeliest"},
        {"--repetition-penalty", OPTION_FLOAT, &sampling.repetition_penalty, 1e-3, 1000, "1 = off"},
        {"--greedy", OPTION_FLAG, &sampling.greedy, 0, 0, "always the most likely token"},
        {"--seed", OPTION_SEED, &sampling.seed, 0, 0, "of the random draws"},
        {"--n", OPTION_INT, &request.n, 1, 100000, "number of samples"},
        {"--stop", OPTION_TEXT, &stop, 0, 0, "text of a token that ends a sample, beside the model's own"},
        {"--ids", OPTION_FLAG, &as_ids, 0, 0, "print token ids"},
    };
    char path[4096];
    int32_t stops[2];
    stream s = TT_INIT;
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;
    tt_ids ids = TT_INIT;
    tt_completions out = TT_INIT;
    tt_status status;
    int i;

    sampling.max_new_tokens = 128;
    sampling.temperature = sampling.top_p = sampling.repetition_penalty = 1.0f;
    request.n = 1;
    options_read(argc, argv, "continues a prompt", table, (int)(sizeof table / sizeof table[0]));
    if (snprintf(path, sizeof path, "%s/tokenizer.json", dir) >= (int)sizeof path)
        example_exit(2, "generate: --model is longer than %d bytes", (int)sizeof path);
    ctx = tt_create(NULL);
    model = ctx ? tt_model_load(ctx, dir) : NULL;
    tokenizer = model ? tt_tokenizer_load(ctx, path) : NULL;
    if (!tokenizer) fail(ctx);

    ids.ctx = s.ids.ctx = ctx;
    if (tt_encode(tokenizer, prompt, strlen(prompt), TT_SPECIAL_PARSE, &ids) != TT_OK) fail(ctx);
    if (ids.size == 0) {   /* an empty prompt: begin as a document begins */
        int32_t bos = tt_model_config_get(model)->bos_token_id;
        if (bos < 0) example_exit(2, "generate: --prompt is \"%s\", expected text: the model has no first token", prompt);
        if (tt_ids_append(&ids, &bos, 1) != TT_OK) fail(ctx);
    }
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    sampling.stop_tokens = stops;
    if (tt_model_config_get(model)->eos_token_id >= 0) stops[sampling.n_stop_tokens++] = tt_model_config_get(model)->eos_token_id;
    if (stop) {
        stops[sampling.n_stop_tokens] = tt_token_id(tokenizer, stop);
        if (stops[sampling.n_stop_tokens++] < 0) example_exit(2, "generate: --stop is \"%s\", which is not one token of the model", stop);
    }
    if (request.n == 1) {
        s.tokenizer = tokenizer;
        s.as_ids = as_ids;
        sampling.on_token = on_token;
        sampling.user = &s;
        if (!as_ids) printf("%s", prompt);
    }
    status = tt_generate(model, &request, 1, &sampling, &out);
    if (status != TT_OK) fail(ctx);
    if (request.n == 1) {
        if (!as_ids) stream_print(&s, 1);
        printf("\n");
    } else {
        for (i = 0; i < out.n; i++) print_completion(ctx, tokenizer, &out.items[i], as_ids);
    }
    tt_completions_free(&out);
    tt_ids_free(&s.ids);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(tokenizer);
    tt_model_destroy(model);
    tt_destroy(ctx);
    return 0;
}
