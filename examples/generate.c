/* generate.c - text from a model directory, printed as it is sampled.
 *
 * Shows: loading a Hugging Face directory and adapters of peft, encoding a prompt, the sampling controls, the on_token
 * callback, a conversation in the model's chat template.
 *
 *     cc -O2 examples/generate.c -o build/generate -lm                   (or: make examples)
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --top-p 0.95
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --greedy --ids
 *     build/generate --model SmolLM2-135M-Instruct --chat                (a line of standard input is a turn)
 *
 * The same seed gives the same text. Controls that are not given are those of the model's generation_config.json, if it
 * says do_sample; every token that it lists as an end stops. With --n above 1 the samples are drawn together and
 * printed at the end. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"
#include "chat.h"

enum { MAX_MESSAGES = 1000, MAX_LINE = 1 << 16 };

static const char *model_dir, *lora_dir, *prompt_text, *system_text, *stop_text;
static int as_ids, as_chat, map_weights;

static void fail(const tt_context *ctx) { example_exit(1, "generate: %s", tt_error(ctx)); }

/* ---- streaming ---- */
/* A token may hold part of a character, which decodes as U+FFFD until the rest comes: so the whole response is
 * decoded again and what is new is printed, without such a tail. */
typedef struct stream {
    const tt_tokenizer *tokenizer;
    tt_ids ids;
    tt_text text;      /* of ids */
    size_t printed;
} stream;

static void stream_print(stream *s, int last) {
    size_t end;
    s->text.size = 0;
    if (tt_decode(s->tokenizer, s->ids.data, s->ids.size, 1, &s->text) != TT_OK) fail(s->text.ctx);
    end = s->text.size;
    while (!last && end >= 3 && memcmp(s->text.data + end - 3, "\xEF\xBF\xBD", 3) == 0) end -= 3;
    if (end > s->printed) {
        fwrite(s->text.data + s->printed, 1, end - s->printed, stdout);
        fflush(stdout);
        s->printed = end;
    }
}
static int on_token(void *user, int request, int sample, int32_t token, float logprob) {
    stream *s = (stream *)user;
    (void)request, (void)sample, (void)logprob;
    if (as_ids) {
        printf("%s%d", s->ids.size ? " " : "", (int)token);
        fflush(stdout);
    }
    if (tt_ids_append(&s->ids, &token, 1) != TT_OK) return 1;
    if (!as_ids) stream_print(s, 0);
    return ferror(stdout);   /* whoever closed the pipe wants no more */
}
static void print_completion(tt_context *ctx, const tt_tokenizer *tokenizer, const tt_completion *c) {
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

/* ---- one prompt ---- */
static tt_status encode_prompt(const tt_model *model, const tt_tokenizer *tokenizer, const char *text, size_t size, tt_ids *out) {
    int32_t bos = tt_model_config_get(model)->bos_token_id;
    tt_status status = tt_encode(tokenizer, text, size, TT_SPECIAL_PARSE, out);
    if (status != TT_OK || out->size > 0) return status;
    if (bos < 0) return tt_fail(out->ctx, TT_ERR_ARG, "the prompt is empty and the model has no first token");
    return tt_ids_append(out, &bos, 1);   /* begin as a document begins */
}
static void continue_prompt(tt_model *model, const tt_tokenizer *tokenizer, tt_sampling *sampling, int n) {
    tt_context *ctx = tt_model_context(model);
    tt_request request = TT_INIT;
    tt_completions out = TT_INIT;
    tt_ids ids = TT_INIT;
    stream s = TT_INIT;
    int i;
    ids.ctx = s.ids.ctx = s.text.ctx = ctx;
    s.tokenizer = tokenizer;
    if (encode_prompt(model, tokenizer, prompt_text, strlen(prompt_text), &ids) != TT_OK) fail(ctx);
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    request.n = n;
    if (n == 1) {
        sampling->on_token = on_token;
        sampling->user = &s;
        if (!as_ids) printf("%s", prompt_text);
    }
    if (tt_generate(model, &request, 1, sampling, &out) != TT_OK) fail(ctx);
    if (n == 1) {
        if (!as_ids) stream_print(&s, 1);
        printf("\n");
    } else {
        for (i = 0; i < out.n; i++) print_completion(ctx, tokenizer, &out.items[i]);
    }
    tt_completions_free(&out);
    tt_text_free(&s.text);
    tt_ids_free(&s.ids);
    tt_ids_free(&ids);
}

/* ---- a conversation ---- */
static char *copy_text(const char *text, size_t size) {
    char *copy = (char *)malloc(size + 1);
    if (!copy) example_exit(1, "generate: out of memory");
    memcpy(copy, text, size);
    copy[size] = 0;
    return copy;
}
/* The assistant's answer to the conversation so far, malloc'd. */
static char *answer(tt_model *model, const tt_tokenizer *tokenizer, tt_sampling sampling, const chat_message *messages, int n) {
    tt_context *ctx = tt_model_context(model);
    int room = tt_model_config_get(model)->max_position_embeddings;
    tt_text text = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_request request = TT_INIT;
    tt_completions out = TT_INIT;
    stream s = TT_INIT;
    char *copy;
    text.ctx = ids.ctx = s.ids.ctx = s.text.ctx = ctx;
    s.tokenizer = tokenizer;
    if (chat_render(&text, messages, n, 1) != TT_OK || encode_prompt(model, tokenizer, text.data, text.size, &ids) != TT_OK) fail(ctx);
    if ((int)ids.size >= room) example_exit(1, "generate: the conversation has %d tokens, the model holds %d", (int)ids.size, room);
    if (sampling.max_new_tokens > room - (int)ids.size) sampling.max_new_tokens = room - (int)ids.size;
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    request.id = (uint64_t)n;
    sampling.on_token = on_token;
    sampling.user = &s;
    if (tt_generate(model, &request, 1, &sampling, &out) != TT_OK) fail(ctx);
    if (!as_ids) stream_print(&s, 1);
    printf("\n");
    if (tt_text_append(&s.text, "", 0) != TT_OK) fail(ctx);
    copy = copy_text(s.text.data, s.text.size);
    tt_completions_free(&out);
    tt_text_free(&s.text);
    tt_ids_free(&s.ids);
    tt_ids_free(&ids);
    tt_text_free(&text);
    return copy;
}
static void converse(tt_model *model, const tt_tokenizer *tokenizer, const tt_sampling *sampling) {
    static chat_message messages[MAX_MESSAGES];
    static char line[MAX_LINE];
    int n = 0, first;
    if (system_text) {
        messages[n].role = "system";
        messages[n++].content = system_text;
    }
    for (first = n; n + 2 <= MAX_MESSAGES; n += 2) {
        const char *turn = prompt_text && n == first ? prompt_text : line;
        if (turn == line) {
            printf("> ");
            fflush(stdout);
            if (!fgets(line, sizeof line, stdin)) break;
            line[strcspn(line, "\r\n")] = 0;
        }
        messages[n].role = "user";
        messages[n].content = copy_text(turn, strlen(turn));
        messages[n + 1].role = "assistant";
        messages[n + 1].content = answer(model, tokenizer, *sampling, messages, n + 1);
    }
    printf("\n");
    for (; first < n; first++) free((void *)(uintptr_t)messages[first].content);
}

/* ---- settings ---- */
/* What was not given comes from the model, if it is meant to be sampled from; else nothing is cut. */
static void complete_sampling(tt_sampling *s, const tt_model *model, const tt_tokenizer *tokenizer, int32_t stops[16]) {
    tt_sampling own = tt_model_sampling(model);
    const char *const texts[] = {stop_text, as_chat ? "<|im_end|>" : NULL};
    int use = !own.greedy, i;
    if (s->temperature < 0) s->temperature = use ? own.temperature : 1;
    if (s->top_k < 0) s->top_k = use ? own.top_k : 0;
    if (s->top_p < 0) s->top_p = use ? own.top_p : 1;
    if (s->min_p < 0) s->min_p = use ? own.min_p : 0;
    if (s->repetition_penalty < 0) s->repetition_penalty = use ? own.repetition_penalty : 1;
    for (i = 0; i < own.n_stop_tokens; i++) stops[s->n_stop_tokens++] = own.stop_tokens[i];
    for (i = 0; i < 2; i++) {
        if (!texts[i]) continue;
        stops[s->n_stop_tokens] = tt_token_id(tokenizer, texts[i]);
        if (stops[s->n_stop_tokens++] < 0) example_exit(2, "generate: --stop is \"%s\", which is not one token of the model", texts[i]);
    }
    s->stop_tokens = stops;
}

int main(int argc, char **argv) {
    tt_sampling sampling = TT_INIT;
    int n = 1;
    const option table[] = {
        {"--model", OPTION_REQUIRED, &model_dir, 0, 0, "model directory"},
        {"--lora", OPTION_TEXT, &lora_dir, 0, 0, "directory of adapters (peft) for it"},
        {"--prompt", OPTION_TEXT, &prompt_text, 0, 0, "text to continue, or the first turn of --chat"},
        {"--chat", OPTION_FLAG, &as_chat, 0, 0, "a conversation in the chat template; turns come from standard input"},
        {"--system", OPTION_TEXT, &system_text, 0, 0, "system message of --chat"},
        {"--max-tokens", OPTION_INT, &sampling.max_new_tokens, 1, 1000000, "tokens to sample"},
        {"--temperature", OPTION_FLOAT, &sampling.temperature, 1e-6, 1000, "divides the logits; -1 = the model's own, or 1"},
        {"--top-k", OPTION_INT, &sampling.top_k, 0, 1e9, "keep the k most likely tokens; 0 = all"},
        {"--top-p", OPTION_FLOAT, &sampling.top_p, 1e-9, 1, "keep the likeliest tokens of this total probability"},
        {"--min-p", OPTION_FLOAT, &sampling.min_p, 0, 1, "drop tokens below this share of the likeliest"},
        {"--repetition-penalty", OPTION_FLOAT, &sampling.repetition_penalty, 1e-3, 1000, "1 = off"},
        {"--greedy", OPTION_FLAG, &sampling.greedy, 0, 0, "always the most likely token"},
        {"--seed", OPTION_SEED, &sampling.seed, 0, 0, "of the random draws"},
        {"--n", OPTION_INT, &n, 1, 100000, "number of samples"},
        {"--stop", OPTION_TEXT, &stop_text, 0, 0, "text of a token that ends a sample, beside the model's own"},
        {"--ids", OPTION_FLAG, &as_ids, 0, 0, "print token ids"},
        {"--map", OPTION_FLAG, &map_weights, 0, 0, "leave the weights in their file: less memory, slower if they are bf16 or f16"},
    };
    char path[4096];
    int32_t stops[16];
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;

    sampling.max_new_tokens = 128;
    sampling.top_k = -1;
    sampling.temperature = sampling.top_p = sampling.min_p = sampling.repetition_penalty = -1;
    options_read(argc, argv, "continues a prompt", table, (int)(sizeof table / sizeof table[0]));
    if (!prompt_text && !as_chat) example_exit(2, "generate: --prompt or --chat is required; --help lists all options");
    if (snprintf(path, sizeof path, "%s/tokenizer.json", model_dir) >= (int)sizeof path)
        example_exit(2, "generate: --model is longer than %d bytes", (int)sizeof path);
    ctx = tt_create(NULL);
    model = !ctx ? NULL : map_weights ? tt_model_map(ctx, model_dir) : tt_model_load(ctx, model_dir);
    tokenizer = model ? tt_tokenizer_load(ctx, path) : NULL;
    if (!tokenizer || (lora_dir && tt_model_lora_load(model, lora_dir) != TT_OK) || (as_chat && chat_check(ctx, tokenizer) != TT_OK)) fail(ctx);
    complete_sampling(&sampling, model, tokenizer, stops);
    if (as_chat) converse(model, tokenizer, &sampling);
    else continue_prompt(model, tokenizer, &sampling, n);
    tt_tokenizer_destroy(tokenizer);
    tt_model_destroy(model);
    tt_destroy(ctx);
    return 0;
}
