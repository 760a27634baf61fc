/* generate.c - text from a model directory, printed as it is sampled.
 *
 * Shows: loading a Hugging Face directory and adapters of peft, encoding a prompt, the sampling controls, the
 * on_token callback, a conversation in the model's chat template.
 *
 *     cc -O2 examples/generate.c -o build/generate -lm                   (or: make examples)
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --top-p 0.95
 *     build/generate --model runs/shakespeare --prompt "ROMEO:" --greedy --ids
 *     build/generate --model SmolLM2-135M-Instruct --chat                (a line of standard input is a turn)
 *
 * A prompt begins as the tokenizer's file says (Llama: with its BOS), a conversation as its template says. In
 * a prompt special tokens count; what is said in a conversation is text, but with --parse-content, which is
 * how transformers reads it. A sample ends at 128 tokens or where the model's context ends, whichever comes
 * first; --max-tokens that do not fit are an error.
 *
 * The same seed gives the same text. Controls that are not given are those of the model's
 * generation_config.json, if it says do_sample; every token that it lists as an end stops. With --n above 1
 * the samples are drawn together and printed at the end. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

enum { MAX_MESSAGES = 1000, MAX_LINE = 1 << 24, DEFAULT_TOKENS = 128 };

/* ---- options ---- */
static const char *model_dir, *lora_dir, *prompt_text, *system_text, *stop_text;
static tt_chat_desc chat;
static tt_sampling sampling;
static int n_samples = 1, as_ids, as_chat, map_weights;

static const option table[] = {
    {"--model", OPTION_REQUIRED, &model_dir, 0, 0, "model directory"},
    {"--lora", OPTION_TEXT, &lora_dir, 0, 0, "directory of adapters (peft) for it"},
    {"--prompt", OPTION_TEXT, &prompt_text, 0, 0, "text to continue, or the first turn of --chat"},
    {"--chat", OPTION_FLAG, &as_chat, 0, 0,
     "a conversation in the chat template; turns come from standard input"},
    {"--format", OPTION_TEXT, &chat.format, 0, 0,
     "chatml, qwen2, qwen2.5, qwen3, smollm2, llama3, llama3.1, plain; not given = the model's own"},
    {"--date", OPTION_TEXT, &chat.date, 0, 0, "today's, for llama3.1; not given = 26 Jul 2024"},
    {"--system", OPTION_TEXT, &system_text, 0, 0, "system message of --chat"},
    {"--parse-content", OPTION_FLAG, &chat.parse_content, 0, 0,
     "special tokens within messages count, as in transformers; not given = they are text"},
    {"--max-tokens", OPTION_INT, &sampling.max_new_tokens, 0, 1000000,
     "tokens to sample, of a turn at most; 0 = 128, or where the model's context ends"},
    {"--temperature", OPTION_FLOAT, &sampling.temperature, 1e-6, 1000,
     "divides the logits; -1 = the model's own, or 1"},
    {"--top-k", OPTION_INT, &sampling.top_k, 0, 1e9, "keep the k most likely tokens; 0 = all"},
    {"--top-p", OPTION_FLOAT, &sampling.top_p, 1e-9, 1,
     "keep the likeliest tokens of this total probability"},
    {"--min-p", OPTION_FLOAT, &sampling.min_p, 0, 1, "drop tokens below this share of the likeliest"},
    {"--repetition-penalty", OPTION_FLOAT, &sampling.repetition_penalty, 1e-3, 1000, "1 = off"},
    {"--greedy", OPTION_FLAG, &sampling.greedy, 0, 0, "always the most likely token"},
    {"--seed", OPTION_SEED, &sampling.seed, 0, 0, "of the random draws"},
    {"--n", OPTION_INT, &n_samples, 1, 100000, "number of samples"},
    {"--stop", OPTION_TEXT, &stop_text, 0, 0,
     "text of a token that ends a sample, beside the model's own"},
    {"--ids", OPTION_FLAG, &as_ids, 0, 0, "print token ids"},
    {"--map", OPTION_FLAG, &map_weights, 0, 0,
     "leave the weights in their file, which must not change meanwhile: less memory, slower if they are "
     "bf16 or f16"},
};
enum { N_OPTIONS = sizeof table / sizeof *table };

static void check_options(void) {
    int greedy = sampling.greedy;
    if (!prompt_text && !as_chat) {
        example_exit(2, "generate: --prompt or --chat is required; --help lists all options");
    }
    option_alone("generate", chat.format && !as_chat, "--format", "without --chat");
    option_alone("generate", chat.date && !as_chat, "--date", "without --chat");
    option_alone("generate", chat.parse_content && !as_chat, "--parse-content", "without --chat");
    option_alone("generate", system_text && !as_chat, "--system", "without --chat");
    option_alone("generate", n_samples > 1 && as_chat, "--n", "with --chat");
    option_alone("generate", greedy && sampling.temperature >= 0, "--temperature", "with --greedy");
    option_alone("generate", greedy && sampling.top_k >= 0, "--top-k", "with --greedy");
    option_alone("generate", greedy && sampling.top_p >= 0, "--top-p", "with --greedy");
    option_alone("generate", greedy && sampling.min_p >= 0, "--min-p", "with --greedy");
}

/* ---- streaming ---- */
/* A token may hold part of a character: the decoder gives whole ones. */
typedef struct stream {
    tt_decoder decoder;
    tt_text text;                 /* all of the response */
    size_t printed, n_tokens;
} stream;

/* All that the program owns: main closes it, whatever failed. */
typedef struct run {
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;
    tt_completions out;
    tt_ids ids;                   /* the prompt, or the conversation so far */
    stream stream;
    tt_text line;                 /* of standard input                      */
    char *said[MAX_MESSAGES];     /* what was said in turns, each malloc'd  */
} run;

static void stream_print(stream *s) {
    fwrite(s->text.data + s->printed, 1, s->text.size - s->printed, stdout);
    fflush(stdout);
    s->printed = s->text.size;
}

static void stream_begin(run *r) {
    r->stream.text.size = r->stream.printed = r->stream.n_tokens = 0;
    memset(&r->stream.decoder, 0, sizeof r->stream.decoder);
    r->stream.decoder.tokenizer = r->tokenizer;
    r->stream.decoder.skip_special = 1;
}

static int on_token(void *user, int request, int sample, int32_t token, float logprob) {
    stream *s = (stream *)user;
    (void)request, (void)sample, (void)logprob;
    if (tt_decoder_push(&s->decoder, token, &s->text) != TT_OK) { return 1; }
    if (as_ids) {
        printf("%s%d", s->n_tokens++ ? " " : "", (int)token);
        fflush(stdout);
    } else if (s->text.size > s->printed) {
        stream_print(s);
    }
    if (ferror(stdout)) { check_output("generate"); }      /* nobody will read more */
    return 0;
}

static tt_status stream_end(stream *s) {
    CHECK(tt_decoder_end(&s->decoder, &s->text));
    CHECK(tt_text_append(&s->text, "", 0));
    if (!as_ids) { stream_print(s); }
    printf("\n");
    return TT_OK;
}

/* ---- one prompt ---- */
/* An empty prompt begins as a document begins. */
static tt_status encode_prompt(run *r) {
    int32_t bos = tt_model_config_get(r->model)->bos_token_id;
    CHECK(tt_encode_prompt(r->tokenizer, prompt_text, strlen(prompt_text), NULL, 0, &r->ids));
    if (r->ids.size > 0) { return TT_OK; }
    if (bos >= 0) { return tt_ids_append(&r->ids, &bos, 1); }
    return tt_fail(r->ctx, TT_ERR_ARG, "the prompt is empty and the model has no first token");
}

/* How many tokens may follow the prompt: as many as were asked for by name, else the default, or what the
 * context has room for. */
static tt_status room_for(run *r, int *out) {
    int positions = tt_model_config_get(r->model)->max_position_embeddings, length = (int)r->ids.size;
    int room = positions - length, asked = sampling.max_new_tokens;
    if (room < 1) {
        return tt_fail(r->ctx, TT_ERR_ARG, "the %s has %d tokens, which leaves no room in the model's "
                       "context of %d", as_chat ? "conversation" : "prompt", length, positions);
    }
    if (asked > room && !as_chat) {
        return tt_fail(r->ctx, TT_ERR_ARG, "--max-tokens is %d, but beside a prompt of %d tokens the model's "
                       "context of %d has room for %d; without --max-tokens the text ends there",
                       asked, length, positions, room);
    }
    if (asked == 0) { asked = DEFAULT_TOKENS; }
    *out = asked < room ? asked : room;
    return TT_OK;
}

/* Samples n times behind r->ids; a single one is printed as it comes, what it continues before it. */
static tt_status sample(run *r, int n, uint64_t id) {
    tt_sampling settings = sampling;
    tt_request request = TT_INIT;
    CHECK(room_for(r, &settings.max_new_tokens));
    request.prompt = r->ids.data;
    request.prompt_length = (int)r->ids.size;
    request.n = n;
    request.id = id;
    if (n == 1) {
        if (!as_chat && !as_ids) { printf("%s", prompt_text); }
        stream_begin(r);
        settings.on_token = on_token;
        settings.user = &r->stream;
    }
    tt_completions_free(&r->out);
    CHECK(tt_generate(r->model, &request, 1, &settings, &r->out));
    return n == 1 ? stream_end(&r->stream) : TT_OK;
}

static tt_status print_completion(run *r, const tt_completion *c) {
    tt_text *text = &r->stream.text;
    int i;
    printf("---- sample %d: %d tokens, %s\n", c->sample, c->length, c->stopped ? "stopped" : "cut");
    for (i = 0; as_ids && i < c->length; i++) { printf("%s%d", i ? " " : "", (int)c->tokens[i]); }
    if (!as_ids) {
        text->size = 0;
        CHECK(tt_decode(r->tokenizer, c->tokens, (size_t)c->length, 1, text));
        fwrite(text->data, 1, text->size, stdout);
    }
    printf("\n");
    return TT_OK;
}

static tt_status continue_prompt(run *r) {
    int i;
    CHECK(encode_prompt(r));
    CHECK(sample(r, n_samples, 0));
    for (i = 0; n_samples > 1 && i < r->out.n; i++) { CHECK(print_completion(r, &r->out.items[i])); }
    return TT_OK;
}

/* ---- a conversation ---- */
/* Message `at` is said by role, a copy of text. */
static tt_status add_message(run *r, tt_message *messages, int at, const char *role, const char *text) {
    size_t size = strlen(text) + 1;
    r->said[at] = (char *)malloc(size);
    if (!r->said[at]) { return tt_fail(r->ctx, TT_ERR_MEM, "out of memory"); }
    memcpy(r->said[at], text, size);
    messages[at].role = role;
    messages[at].content = r->said[at];
    return TT_OK;
}

/* The next line of standard input, whatever its length, is r->line; *more = 0 at the end. */
static tt_status read_line(run *r, int *more) {
    tt_text *text = &r->line;
    int c = getchar();
    text->size = 0;
    *more = c != EOF;
    for (; c != EOF && c != '\n'; c = getchar()) {
        const char byte = (char)c;
        if (c == 0) {
            return tt_fail(r->ctx, TT_ERR_ARG, "--chat: a line has a byte 0 behind %lu bytes",
                           (unsigned long)text->size);
        }
        if (text->size == MAX_LINE) {
            return tt_fail(r->ctx, TT_ERR_ARG, "--chat: a line has more than %d bytes", MAX_LINE);
        }
        CHECK(tt_text_append(text, &byte, 1));
    }
    if (text->size > 0 && text->data[text->size - 1] == '\r') { text->size--; }
    return tt_text_append(text, "", 0);
}

/* The assistant's answer to the first n messages becomes the next one. */
static tt_status answer(run *r, tt_message *messages, int n) {
    r->ids.size = 0;
    CHECK(tt_chat_encode(r->ctx, &chat, messages, n, &r->ids, NULL));
    CHECK(sample(r, 1, (uint64_t)n));
    return add_message(r, messages, n, "assistant", r->stream.text.data);
}

static tt_status converse(run *r) {
    static tt_message messages[MAX_MESSAGES];
    int n = 0, first, more = 1;
    if (system_text) { CHECK(add_message(r, messages, n++, "system", system_text)); }
    for (first = n; n + 2 <= MAX_MESSAGES; n += 2) {
        const char *turn = n == first ? prompt_text : NULL;
        if (!turn) {
            printf("> ");
            fflush(stdout);
            CHECK(read_line(r, &more));
            if (!more) { break; }
            turn = r->line.data;
        }
        CHECK(add_message(r, messages, n, "user", turn));
        CHECK(answer(r, messages, n + 1));
    }
    printf("\n");
    return TT_OK;
}

/* ---- settings ---- */
/* What was not given comes from the model, if it is meant to be sampled from; else nothing is cut. */
static void complete_controls(const tt_sampling *own) {
    tt_sampling *s = &sampling;
    int use = !own->greedy;
    if (s->temperature < 0) { s->temperature = use ? own->temperature : 1; }
    if (s->top_k < 0) { s->top_k = use ? own->top_k : 0; }
    if (s->top_p < 0) { s->top_p = use ? own->top_p : 1; }
    if (s->min_p < 0) { s->min_p = use ? own->min_p : 0; }
    if (s->repetition_penalty < 0) { s->repetition_penalty = use ? own->repetition_penalty : 1; }
}

/* Every token that the model lists as an end, those that end a turn in chatml and llama3, and --stop. */
static void complete_stops(const run *r, const tt_sampling *own) {
    static const char *const turns[] = {"<|im_end|>", "<|eot_id|>"};
    static int32_t stops[16];
    int n = 0, i;
    for (i = 0; i < own->n_stop_tokens; i++) { stops[n++] = own->stop_tokens[i]; }
    for (i = 0; as_chat && i < 2; i++) {
        stops[n] = tt_token_id(r->tokenizer, turns[i]);
        n += stops[n] >= 0;
    }
    if (stop_text) {
        stops[n] = tt_token_id(r->tokenizer, stop_text);
        if (stops[n++] < 0) {
            example_exit(2, "generate: --stop is \"%s\", which is not one token of the model", stop_text);
        }
    }
    sampling.stop_tokens = stops;
    sampling.n_stop_tokens = n;
}

static tt_status open_model(run *r) {
    const char *path = path_of(model_dir, "tokenizer.json");
    tt_sampling own;
    int positions;
    r->model = map_weights ? tt_model_map(r->ctx, model_dir) : tt_model_load(r->ctx, model_dir);
    r->tokenizer = r->model ? tt_tokenizer_load(r->ctx, path) : NULL;
    if (!r->tokenizer) { return tt_error_status(r->ctx); }
    if (lora_dir) { CHECK(tt_model_lora_load(r->model, lora_dir)); }
    CHECK(check_vocabulary(r->model, r->tokenizer, path));
    positions = tt_model_config_get(r->model)->max_position_embeddings;
    if (sampling.max_new_tokens >= positions) {
        return tt_fail(r->ctx, TT_ERR_ARG, "--max-tokens is %d, but the model's context ends at %d",
                       sampling.max_new_tokens, positions);
    }
    own = tt_model_sampling(r->model);
    complete_controls(&own);
    complete_stops(r, &own);
    chat.tokenizer = r->tokenizer;
    chat.generation_prompt = 1;
    if (as_chat && !chat.format) { chat.format = tt_model_chat_format(r->model); }
    return as_chat && !chat.format ? tt_error_status(r->ctx) : TT_OK;
}

static tt_status generate(run *r) {
    CHECK(open_model(r));
    return as_chat ? converse(r) : continue_prompt(r);
}

static void close_all(run *r) {
    int i;
    for (i = 0; i < MAX_MESSAGES; i++) { free(r->said[i]); }
    tt_completions_free(&r->out);
    tt_text_free(&r->line);
    tt_text_free(&r->stream.text);
    tt_ids_free(&r->ids);
    tt_tokenizer_destroy(r->tokenizer);
    tt_model_destroy(r->model);
}

int main(int argc, char **argv) {
    static run r;
    tt_status status;
    sampling.top_k = -1;
    sampling.temperature = sampling.top_p = sampling.min_p = sampling.repetition_penalty = -1;
    options_read(argc, argv, "continues a prompt", table, N_OPTIONS);
    check_options();
    r.ctx = program_context("generate", NULL);
    r.ids.ctx = r.stream.text.ctx = r.line.ctx = r.ctx;
    status = generate(&r);
    close_all(&r);
    return program_end("generate", r.ctx, status);
}
