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
 * A prompt begins as the tokenizer's file says (Llama: with its BOS), a conversation as its template says. In a prompt special
 * tokens count; what is said in a conversation is text, but with --parse-content, which is how transformers reads it.
 * A sample ends at 128 tokens or where the model's context ends, whichever comes first; --max-tokens that do not fit are an error.
 *
 * The same seed gives the same text. Controls that are not given are those of the model's generation_config.json, if it
 * says do_sample; every token that it lists as an end stops. With --n above 1 the samples are drawn together and
 * printed at the end. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

enum { MAX_MESSAGES = 1000, MAX_LINE = 1 << 24, DEFAULT_TOKENS = 128 };

static const char *model_dir, *lora_dir, *prompt_text, *system_text, *stop_text;
static tt_chat_desc chat;
static int as_ids, as_chat, map_weights;

static void fail(const tt_context *ctx) { example_exit(1, "generate: %s", tt_error(ctx)); }

/* ---- streaming ---- */
/* A token may hold part of a character: the decoder gives whole ones. */
typedef struct stream {
    tt_decoder decoder;
    tt_text text;      /* all of the response */
    size_t printed, n_tokens;
} stream;

static void stream_print(stream *s) {
    fwrite(s->text.data + s->printed, 1, s->text.size - s->printed, stdout);
    fflush(stdout);
    s->printed = s->text.size;
}
static int on_token(void *user, int request, int sample, int32_t token, float logprob) {
    stream *s = (stream *)user;
    (void)request, (void)sample, (void)logprob;
    if (tt_decoder_push(&s->decoder, token, &s->text) != TT_OK) return 1;
    if (as_ids) {
        printf("%s%d", s->n_tokens++ ? " " : "", (int)token);
        fflush(stdout);
    } else if (s->text.size > s->printed) {
        stream_print(s);
    }
    if (ferror(stdout)) check_output("generate");   /* nobody will read more */
    return 0;
}
static void stream_end(stream *s) {
    if (tt_decoder_end(&s->decoder, &s->text) != TT_OK || tt_text_append(&s->text, "", 0) != TT_OK) fail(s->text.ctx);
    if (!as_ids) stream_print(s);
    printf("\n");
}
static void print_completion(tt_context *ctx, const tt_tokenizer *tokenizer, const tt_completion *c) {
    tt_text text = TT_INIT;
    int i;
    text.ctx = ctx;
    printf("---- sample %d: %d tokens, %s\n", c->sample, c->length, c->stopped ? "stopped" : "cut");
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
    tt_status status = tt_encode_prompt(tokenizer, text, size, NULL, 0, out);
    if (status != TT_OK || out->size > 0) return status;
    if (bos < 0) return tt_fail(out->ctx, TT_ERR_ARG, "the prompt is empty and the model has no first token");
    return tt_ids_append(out, &bos, 1);   /* begin as a document begins */
}
/* How many tokens may follow a prompt: as many as were asked for by name, else the default, or what the context has room for. */
static int room_for(const tt_model *model, const tt_ids *prompt, int asked) {
    int positions = tt_model_config_get(model)->max_position_embeddings, room = positions - (int)prompt->size;
    if (room < 1) example_exit(1, "generate: the %s has %d tokens, which leaves no room in the model's context of %d", as_chat ? "conversation" : "prompt", (int)prompt->size, positions);
    if (asked > room && !as_chat)
        example_exit(1, "generate: --max-tokens is %d, but beside a prompt of %d tokens the model's context of %d has room for %d; without --max-tokens the text ends there",
                     asked, (int)prompt->size, positions, room);
    if (asked == 0) asked = DEFAULT_TOKENS;
    return asked < room ? asked : room;
}
static void continue_prompt(tt_model *model, const tt_tokenizer *tokenizer, tt_sampling *sampling, int n) {
    tt_context *ctx = tt_model_context(model);
    tt_request request = TT_INIT;
    tt_completions out = TT_INIT;
    tt_ids ids = TT_INIT;
    stream s = TT_INIT;
    int i;
    ids.ctx = s.text.ctx = ctx;
    s.decoder.tokenizer = tokenizer;
    s.decoder.skip_special = 1;
    if (encode_prompt(model, tokenizer, prompt_text, strlen(prompt_text), &ids) != TT_OK) fail(ctx);
    sampling->max_new_tokens = room_for(model, &ids, sampling->max_new_tokens);
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    request.n = n;
    if (n == 1) {
        sampling->on_token = on_token;
        sampling->user = &s;
        if (!as_ids) printf("%s", prompt_text);
    }
    if (tt_generate(model, &request, 1, sampling, &out) != TT_OK) fail(ctx);
    if (n == 1) stream_end(&s);
    for (i = 0; n > 1 && i < out.n; i++) print_completion(ctx, tokenizer, &out.items[i]);
    tt_completions_free(&out);
    tt_text_free(&s.text);
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
static char *answer(tt_model *model, const tt_tokenizer *tokenizer, tt_sampling sampling, const tt_message *messages, int n) {
    tt_context *ctx = tt_model_context(model);
    tt_ids ids = TT_INIT;
    tt_request request = TT_INIT;
    tt_completions out = TT_INIT;
    stream s = TT_INIT;
    char *copy;
    ids.ctx = s.text.ctx = ctx;
    s.decoder.tokenizer = tokenizer;
    s.decoder.skip_special = 1;
    if (tt_chat_encode(ctx, &chat, messages, n, &ids, NULL) != TT_OK) fail(ctx);
    sampling.max_new_tokens = room_for(model, &ids, sampling.max_new_tokens);
    request.prompt = ids.data;
    request.prompt_length = (int)ids.size;
    request.id = (uint64_t)n;
    sampling.on_token = on_token;
    sampling.user = &s;
    if (tt_generate(model, &request, 1, &sampling, &out) != TT_OK) fail(ctx);
    stream_end(&s);
    copy = copy_text(s.text.data, s.text.size);
    tt_completions_free(&out);
    tt_text_free(&s.text);
    tt_ids_free(&ids);
    return copy;
}
/* The next line of standard input, whatever its length, in text; 0 at the end. */
static int read_line(tt_text *text) {
    int c = getchar();
    text->size = 0;
    if (c == EOF) return 0;
    for (; c != EOF && c != '\n'; c = getchar()) {
        const char byte = (char)c;
        if (c == 0) example_exit(1, "generate: --chat: a line has a byte 0 behind %lu bytes", (unsigned long)text->size);
        if (text->size == MAX_LINE) example_exit(1, "generate: --chat: a line has more than %d bytes", MAX_LINE);
        if (tt_text_append(text, &byte, 1) != TT_OK) fail(text->ctx);
    }
    if (text->size > 0 && text->data[text->size - 1] == '\r') text->size--;
    if (tt_text_append(text, "", 0) != TT_OK) fail(text->ctx);
    return 1;
}
static void converse(tt_model *model, const tt_tokenizer *tokenizer, const tt_sampling *sampling) {
    static tt_message messages[MAX_MESSAGES];
    tt_text line = TT_INIT;
    int n = 0, first;
    line.ctx = tt_model_context(model);
    if (system_text) {
        messages[n].role = "system";
        messages[n++].content = system_text;
    }
    for (first = n; n + 2 <= MAX_MESSAGES; n += 2) {
        const char *turn = n == first ? prompt_text : NULL;
        if (!turn) {
            printf("> ");
            fflush(stdout);
            if (!read_line(&line)) break;
            turn = line.data;
        }
        messages[n].role = "user";
        messages[n].content = copy_text(turn, strlen(turn));
        messages[n + 1].role = "assistant";
        messages[n + 1].content = answer(model, tokenizer, *sampling, messages, n + 1);
    }
    printf("\n");
    tt_text_free(&line);
    for (; first < n; first++) free((void *)(uintptr_t)messages[first].content);
}

/* ---- settings ---- */
/* What was not given comes from the model, if it is meant to be sampled from; else nothing is cut. */
static void complete_sampling(tt_sampling *s, const tt_model *model, const tt_tokenizer *tokenizer, int32_t stops[16]) {
    tt_sampling own = tt_model_sampling(model);
    static const char *const turns[] = {"<|im_end|>", "<|eot_id|>"};      /* end a turn in chatml and llama3 */
    int use = !own.greedy, i;
    if (s->temperature < 0) s->temperature = use ? own.temperature : 1;
    if (s->top_k < 0) s->top_k = use ? own.top_k : 0;
    if (s->top_p < 0) s->top_p = use ? own.top_p : 1;
    if (s->min_p < 0) s->min_p = use ? own.min_p : 0;
    if (s->repetition_penalty < 0) s->repetition_penalty = use ? own.repetition_penalty : 1;
    for (i = 0; i < own.n_stop_tokens; i++) stops[s->n_stop_tokens++] = own.stop_tokens[i];
    for (i = 0; as_chat && i < 2; i++) {
        stops[s->n_stop_tokens] = tt_token_id(tokenizer, turns[i]);
        if (stops[s->n_stop_tokens] >= 0) s->n_stop_tokens++;
    }
    if (stop_text) {
        stops[s->n_stop_tokens] = tt_token_id(tokenizer, stop_text);
        if (stops[s->n_stop_tokens++] < 0) example_exit(2, "generate: --stop is \"%s\", which is not one token of the model", stop_text);
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
        {"--format", OPTION_TEXT, &chat.format, 0, 0, "chatml, qwen2, qwen2.5, qwen3, smollm2, llama3, llama3.1, plain; not given = the model's own"},
        {"--date", OPTION_TEXT, &chat.date, 0, 0, "today's, for llama3.1; not given = 26 Jul 2024"},
        {"--system", OPTION_TEXT, &system_text, 0, 0, "system message of --chat"},
        {"--parse-content", OPTION_FLAG, &chat.parse_content, 0, 0, "special tokens within messages count, as in transformers; not given = they are text"},
        {"--max-tokens", OPTION_INT, &sampling.max_new_tokens, 0, 1000000, "tokens to sample, of a turn at most; 0 = 128, or where the model's context ends"},
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
        {"--map", OPTION_FLAG, &map_weights, 0, 0, "leave the weights in their file, which must not change meanwhile: less memory, slower if they are bf16 or f16"},
    };
    char path[4096];
    int32_t stops[16];
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;

    sampling.top_k = -1;
    sampling.temperature = sampling.top_p = sampling.min_p = sampling.repetition_penalty = -1;
    options_read(argc, argv, "continues a prompt", table, (int)(sizeof table / sizeof table[0]));
    if (!prompt_text && !as_chat) example_exit(2, "generate: --prompt or --chat is required; --help lists all options");
    option_alone("generate", chat.format && !as_chat, "--format", "without --chat");
    option_alone("generate", chat.date && !as_chat, "--date", "without --chat");
    option_alone("generate", chat.parse_content && !as_chat, "--parse-content", "without --chat");
    option_alone("generate", system_text && !as_chat, "--system", "without --chat");
    option_alone("generate", n > 1 && as_chat, "--n", "with --chat");
    option_alone("generate", sampling.greedy && sampling.temperature >= 0, "--temperature", "with --greedy");
    option_alone("generate", sampling.greedy && sampling.top_k >= 0, "--top-k", "with --greedy");
    option_alone("generate", sampling.greedy && sampling.top_p >= 0, "--top-p", "with --greedy");
    option_alone("generate", sampling.greedy && sampling.min_p >= 0, "--min-p", "with --greedy");
    if (snprintf(path, sizeof path, "%s/tokenizer.json", model_dir) >= (int)sizeof path)
        example_exit(2, "generate: --model is longer than %d bytes", (int)sizeof path);
    ctx = tt_create(NULL);
    model = !ctx ? NULL : map_weights ? tt_model_map(ctx, model_dir) : tt_model_load(ctx, model_dir);
    tokenizer = model ? tt_tokenizer_load(ctx, path) : NULL;
    if (!tokenizer || (lora_dir && tt_model_lora_load(model, lora_dir) != TT_OK)) fail(ctx);
    if (tt_vocab_size(tokenizer) > tt_model_config_get(model)->vocab_size)
        example_exit(1, "generate: %s has %d tokens, expected at most the model's vocab_size %d", path, tt_vocab_size(tokenizer), tt_model_config_get(model)->vocab_size);
    if (sampling.max_new_tokens >= tt_model_config_get(model)->max_position_embeddings)
        example_exit(1, "generate: --max-tokens is %d, but the model's context ends at %d", sampling.max_new_tokens, tt_model_config_get(model)->max_position_embeddings);
    complete_sampling(&sampling, model, tokenizer, stops);
    chat.tokenizer = tokenizer;
    chat.generation_prompt = 1;
    if (as_chat && !chat.format) chat.format = tt_model_chat_format(model);
    if (as_chat && !chat.format) fail(ctx);
    if (as_chat) converse(model, tokenizer, &sampling);
    else continue_prompt(model, tokenizer, &sampling, n);
    tt_tokenizer_destroy(tokenizer);
    tt_model_destroy(model);
    tt_destroy(ctx);
    check_output("generate");
    return 0;
}
