/* sft.c - supervised fine-tuning on JSON lines; only completions are learnt.
 *
 * Shows: reading JSON lines, packing sequences of any length without padding, a loss mask, epochs and shuffling,
 * evaluation, adapters (LoRA) over a frozen base that stays in its file, a run that is killed and goes on exactly.
 *
 *     cc -O2 examples/sft.c -o build/sft -lm                             (or: make examples)
 *     build/sft --model runs/shakespeare --data answers.jsonl --out runs/answers --epochs 3
 *     build/sft --model SmolLM2-135M-Instruct --data chats.jsonl --out runs/adapter --lora-rank 16 --lr 2e-4
 *     build/sft ... --resume                                             (after a crash or --stop-after)
 *
 * A line is {"prompt": ..., "completion": ...}, taken as it is, {"question" or "problem": ..., "answer": ...}, put into --template,
 * or {"messages": [{"role": ..., "content": ...}, ...]}, a conversation whose assistant turns are learnt. Special tokens
 * count in prompt, template and chat template; question, answer, completion and the contents of messages are text, as they
 * are in reinforcement learning (--parse-content: contents as transformers reads them). A prompt begins as the tokenizer's
 * file says (Llama: with its BOS). The model's end token is appended to a completion. A line that is longer than the model's
 * positions is left out and counted, or (--on-long error) named before any work. The last 5 % of the lines are held out. With
 * --lora-rank, --out is a directory
 * of peft, or with --merge a whole model. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "run.h"

/* All examples end to end; example i is tokens[begin[i] .. begin[i+1]). */
typedef struct examples {
    tt_ids tokens, begin;
    tt_text learn;              /* one byte for each token, 1 = part of a completion */
    int n, n_left_out, n_conversations;
} examples;

/* Where a run stands: everything but weights and moments, which tt_optimizer_save keeps. */
typedef struct progress { int epoch, at, step; double loss, targets; int first, skipped; double begin; } progress;      /* of this start: its first step, updates left out in a row, clock */

static const char *model_dir, *data_path, *out_dir, *on_long = "skip", *format, *date, *template_text = "Question: {question}\nAnswer: ";
static int epochs = 3, batch_tokens = 2048, lora_rank, merge, resume, save_every = 100, stop_after, gradient_parts;
static int parse_content;
static float learning_rate = 1e-4f, lora_alpha;
static uint64_t seed;
static int map_base;

static void fail(const tt_context *ctx) { example_exit(1, "sft: %s", tt_error(ctx)); }
static void bad_line(size_t line, const char *what) { example_exit(1, "sft: --data %s: line %lu %s", data_path, (unsigned long)line, what); }

/* ---- data ---- */
/* Prompt and completion are encoded apart, so that the border between them is the same as in sampling. */
static void add_ids(examples *all, const int32_t *ids, size_t n, int learn) {
    const char mark = (char)learn;
    if (tt_ids_append(&all->tokens, ids, n) != TT_OK) fail(all->tokens.ctx);
    while (all->learn.size < all->tokens.size) if (tt_text_append(&all->learn, &mark, 1) != TT_OK) fail(all->tokens.ctx);
}
/* A text of the record under one of two names; NULL if it has neither. A number counts where numbers do. */
static const char *text_of(const tt_json_lines *lines, const tt_json *record, const char *name, const char *other, int numbers) {
    const char *text;
    if (tt_json_lines_text(lines, record, name, numbers, &text) != TT_OK) fail(lines->ctx);
    if (!text && tt_json_lines_text(lines, record, other, numbers, &text) != TT_OK) fail(lines->ctx);
    return text;
}
static void add_pair(examples *all, const tt_tokenizer *tokenizer, const tt_json_lines *lines, const tt_json *record, int32_t end) {
    const char *prompt = text_of(lines, record, "prompt", "prompt", 0), *question = text_of(lines, record, "question", "problem", 0);
    const char *completion = text_of(lines, record, "completion", "answer", 1), *text = prompt ? prompt : template_text;
    size_t line = (size_t)lines->line;
    tt_ids ids = TT_INIT;
    ids.ctx = all->tokens.ctx;
    if (!completion) bad_line(line, "has neither \"completion\" nor \"answer\" nor \"messages\"");
    if (!prompt && !question) bad_line(line, "has neither \"prompt\" nor \"question\" nor \"messages\"");
    if (tt_encode_prompt(tokenizer, text, strlen(text), prompt ? NULL : question, prompt ? 0 : strlen(question), &ids) != TT_OK) fail(ids.ctx);
    if (ids.size == 0) bad_line(line, "has an empty prompt");
    add_ids(all, ids.data, ids.size, 0);
    ids.size = 0;
    if (tt_encode(tokenizer, completion, strlen(completion), TT_SPECIAL_TEXT, &ids) != TT_OK) fail(ids.ctx);
    add_ids(all, ids.data, ids.size, 1);
    if (end >= 0) add_ids(all, &end, 1, 1);
    tt_ids_free(&ids);
}
/* Ends the example that has been gathered since the last one, if it fits the model and has something to learn. */
static void close_example(examples *all, const tt_model *model, size_t line) {
    int32_t begin = all->begin.data[all->n], end = (int32_t)all->tokens.size;
    int positions = tt_model_config_get(model)->max_position_embeddings;
    if (end - begin > positions && strcmp(on_long, "error") == 0)
        example_exit(1, "sft: --data %s: line %lu has %d tokens, the model holds %d; --on-long skip leaves such lines out", data_path, (unsigned long)line, (int)(end - begin), positions);
    if (end - begin > positions || !memchr(all->learn.data + begin, 1, (size_t)(end - begin))) {
        all->tokens.size = all->learn.size = (size_t)begin;
        all->n_left_out++;
        return;
    }
    if (tt_ids_append(&all->begin, &end, 1) != TT_OK) fail(all->tokens.ctx);
    all->n++;
}
/* Each turn of the assistant is learnt once, after all that stands before it. Where that does not begin with the example so
 * far, because the template changes earlier turns (Qwen 3 drops their thoughts), the turn begins an example of its own. */
static void add_messages(examples *all, const tt_model *model, const tt_tokenizer *tokenizer, const tt_json_lines *lines, const tt_json *list) {
    size_t line = (size_t)lines->line;
    tt_chat_desc chat = TT_INIT;
    tt_message messages[256];
    const tt_json *node;
    tt_context *ctx = all->tokens.ctx;
    tt_text text = TT_INIT, longer = TT_INIT;     /* text: of the example so far */
    tt_ids before = TT_INIT, answer = TT_INIT;
    int n = 0, learnt = 0;
    if (list->type != TT_JSON_ARRAY) bad_line(line, "has \"messages\" that are no list");
    text.ctx = longer.ctx = before.ctx = answer.ctx = ctx;
    if (!format) format = tt_model_chat_format(model);
    if (!format) fail(ctx);
    chat.format = format;
    chat.parse_content = parse_content;
    chat.date = date;
    chat.tokenizer = tokenizer;
    for (node = list->child; node; node = node->next, n++) {
        if (n == 256) bad_line(line, "has more than 256 messages");
        messages[n].role = text_of(lines, node, "role", "role", 0);
        messages[n].content = text_of(lines, node, "content", "content", 0);
        if (!messages[n].role || !messages[n].content) bad_line(line, "has a message without \"role\" or \"content\"");
        if (strcmp(messages[n].role, "assistant") != 0) continue;
        longer.size = before.size = answer.size = 0;
        if (tt_chat_render(ctx, &chat, messages, n + 1, &longer) != TT_OK) fail(ctx);
        if (text.size > 0 && (text.size > longer.size || memcmp(longer.data, text.data, text.size) != 0)) {
            close_example(all, model, line);
            text.size = 0;
        }
        chat.from = text.size;
        if (tt_chat_encode(ctx, &chat, messages, n + 1, &before, &answer) != TT_OK) bad_line(line, tt_error(ctx));
        add_ids(all, before.data, before.size, 0);
        add_ids(all, answer.data, answer.size, 1);
        text.size = 0;
        if (tt_text_append(&text, longer.data, longer.size) != TT_OK) fail(ctx);
        learnt++;
    }
    if (!learnt) bad_line(line, "has no message of the assistant");
    tt_text_free(&text);
    tt_text_free(&longer);
    tt_ids_free(&before);
    tt_ids_free(&answer);
}
static void add_example(examples *all, tt_model *model, const tt_tokenizer *tokenizer, const tt_json_lines *lines, const tt_json *record) {
    const tt_json *messages = tt_json_get(record, "messages");
    all->n_conversations += messages != NULL;
    if (messages) add_messages(all, model, tokenizer, lines, messages);
    else add_pair(all, tokenizer, lines, record, tt_model_config_get(model)->eos_token_id);
    close_example(all, model, (size_t)lines->line);
}
static void read_examples(examples *all, tt_model *model, const tt_tokenizer *tokenizer) {
    tt_context *ctx = tt_model_context(model);
    tt_json_lines lines = TT_INIT;
    tt_json *record;
    int32_t zero = 0;
    lines.ctx = all->tokens.ctx = all->begin.ctx = all->learn.ctx = ctx;
    if (tt_json_lines_open(&lines, data_path) != TT_OK || tt_ids_append(&all->begin, &zero, 1) != TT_OK) fail(ctx);
    for (;;) {
        if (tt_json_lines_next(&lines, &record) != TT_OK) fail(ctx);
        if (!record) break;
        add_example(all, model, tokenizer, &lines, record);
        tt_json_free(ctx, record);
    }
    tt_json_lines_close(&lines);
    if (all->n == 0) example_exit(1, "sft: --data %s holds no example", data_path);
    if (all->n_conversations == 0) {
        option_alone("sft", format != NULL, "--format", "with data without messages");
        option_alone("sft", date != NULL, "--date", "with data without messages");
        option_alone("sft", parse_content, "--parse-content", "with data without messages");
    }
}

/* ---- batches ---- */
/* How many of order[0..n) fit into one batch; at least one. */
static int batch_size(const examples *all, const int32_t *order, int n) {
    int i = 0, tokens = 0;
    while (i < n) {
        tokens += all->begin.data[order[i] + 1] - all->begin.data[order[i]];
        if (i > 0 && tokens > batch_tokens) break;
        i++;
    }
    return i;
}
/* Mean negative log-likelihood of the completions of order[0..n); how many tokens they have. */
static tt_tensor *completion_loss(tt_model *model, const examples *all, const int32_t *order, int n, int *n_targets) {
    tt_context *ctx = tt_model_context(model);
    tt_batch_desc desc = TT_INIT;
    tt_batch *batch;
    tt_ids tokens = TT_INIT, offsets = TT_INIT;
    tt_text mask = TT_INIT;
    int32_t end = 0;
    int i;
    tokens.ctx = offsets.ctx = mask.ctx = ctx;
    if (tt_ids_append(&offsets, &end, 1) != TT_OK) fail(ctx);
    for (i = 0; i < n; i++) {
        int32_t begin = all->begin.data[order[i]];
        size_t length = (size_t)(all->begin.data[order[i] + 1] - begin);
        end += (int32_t)length;
        if (tt_ids_append(&tokens, all->tokens.data + begin, length) != TT_OK || tt_ids_append(&offsets, &end, 1) != TT_OK ||
            tt_text_append(&mask, all->learn.data + begin, length) != TT_OK) fail(ctx);
    }
    desc.n_sequences = n;
    desc.offsets = offsets.data;
    desc.tokens = tokens.data;
    desc.mask = (const unsigned char *)mask.data;
    batch = tt_batch_create(ctx, &desc);
    if (!batch) fail(ctx);
    *n_targets = batch->n_targets;
    tt_text_free(&mask);
    tt_ids_free(&tokens);
    tt_ids_free(&offsets);
    return tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, batch, 1.0f, NULL)));
}
static double evaluate(tt_model *model, const examples *all, const int32_t *order, int n) {
    tt_context *ctx = tt_model_context(model);
    double sum = 0, targets = 0;
    int at, size, n_targets;
    for (at = 0; at < n; at += size) {
        size = batch_size(all, order + at, n - at);
        tt_no_grad_begin(ctx);
        sum += tt_item(completion_loss(model, all, order + at, size, &n_targets)) * n_targets;
        tt_no_grad_end(ctx);
        if (tt_eval(ctx) != TT_OK) fail(ctx);
        targets += n_targets;
        tt_step_reset(ctx);
    }
    return targets > 0 ? sum / targets : 0;
}
/* The order of an epoch depends on seed and epoch alone, so a resumed run needs no state of a generator. */
static void shuffle(int32_t *order, int n, int epoch) {
    tt_rng rng = TT_INIT;
    int i;
    rng.seed = seed;
    rng.stream = (uint64_t)epoch;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        int k = tt_rng_below(&rng, i + 1);
        int32_t swap = order[i];
        order[i] = order[k];
        order[k] = swap;
    }
}

/* ---- training ---- */
static const char *state_path(void) { return path_of(out_dir, "training.safetensors"); }
static void save_state(tt_context *ctx, tt_optimizer *optimizer, const progress *p) {
    tt_text json = TT_INIT;
    if (parallel_rank > 0) return;
    json.ctx = ctx;
    if (tt_text_format(&json, "{\"epoch\": %d, \"at\": %d, \"step\": %d, \"loss\": %r, \"targets\": %r}", p->epoch, p->at, p->step, p->loss, p->targets) != TT_OK ||
        tt_optimizer_save(optimizer, state_path(), json.data, NULL, 0) != TT_OK) fail(ctx);
    tt_text_free(&json);
}
static void load_state(tt_context *ctx, tt_optimizer *optimizer, int n_train, progress *p) {
    tt_text text = TT_INIT;
    tt_json *json;
    long long most;
    text.ctx = ctx;
    if (tt_optimizer_load(optimizer, state_path(), &text, NULL, 0) != TT_OK) fail(ctx);
    json = tt_json_parse(ctx, text.data, text.size);
    if (!json || state_count(ctx, state_path(), json, "epoch", epochs - 1, &p->epoch) != TT_OK || state_count(ctx, state_path(), json, "at", n_train, &p->at) != TT_OK) fail(ctx);
    most = (long long)p->epoch * n_train + p->at;      /* a step takes one example or more */
    if (state_count(ctx, state_path(), json, "step", most < INT_MAX ? (int)most : INT_MAX, &p->step) != TT_OK) fail(ctx);
    p->loss = tt_json_number(json, "loss", 0);
    p->targets = tt_json_number(json, "targets", 0);
    tt_json_free(ctx, json);
    tt_text_free(&text);
}
/* Tokens of order[0..n) that are learnt: not the first of a text, which nothing predicts. */
static int count_targets(const examples *all, const int32_t *order, int n) {
    int i, count = 0;
    int32_t k;
    for (i = 0; i < n; i++)
        for (k = all->begin.data[order[i]] + 1; k < all->begin.data[order[i] + 1]; k++) count += all->learn.data[k] != 0;
    return count;
}
/* Mean loss over all targets of order[0..n); each process has some parts of the examples, one process all. */
static double backward(tt_model *model, tt_reducer *reducer, const examples *all, const int32_t *order, int n, int n_targets) {
    tt_context *ctx = tt_model_context(model);
    const tt_reducer_desc *d = tt_reducer_desc_get(reducer);
    int own = d->n_parts / d->world_size, part, targets;
    double sum = 0;
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = (int)((long long)n * part / d->n_parts), end = (int)((long long)n * (part + 1) / d->n_parts);
        if (begin < end) {
            tt_tensor *loss = completion_loss(model, all, order + begin, end - begin, &targets);
            loss = tt_scale(ctx, loss, (float)targets / (float)n_targets);
            if (tt_backward(ctx, loss) != TT_OK) fail(ctx);
            sum += tt_item(loss);
            tt_step_reset(ctx);
        }
        if (tt_reducer_add(reducer) != TT_OK) fail(ctx);
    }
    if (tt_reducer_sum(reducer) != TT_OK) fail(ctx);
    return parallel_add(sum);
}
/* One update from the batch at p, which moves on. */
static void train_step(tt_model *model, tt_reducer *reducer, tt_optimizer *optimizer, const tt_schedule *schedule, const examples *all, const int32_t *order, int n, progress *p) {
    tt_context *ctx = tt_model_context(model);
    int size = batch_size(all, order + p->at, n - p->at), n_targets = count_targets(all, order + p->at, size);
    double loss = backward(model, reducer, all, order + p->at, size, n_targets), seconds;
    p->loss += loss * n_targets;
    p->targets += n_targets;
    if (take_update(ctx, optimizer, tt_learning_rate(schedule, p->step), p->step + 1, &p->skipped) != TT_OK) fail(ctx);
    p->at += size;
    p->step++;
    seconds = tt_clock() - p->begin;
    if (p->step % 10 == 0) printf("step %d/~%d  loss %.4f  %s left\n", p->step, schedule->total_steps, loss, clock_text(seconds / (p->step - p->first) * (schedule->total_steps - p->step)));
    fflush(stdout);
}
/* 1 = all epochs done, 0 = stopped before. */
static int train(tt_model *model, tt_reducer *reducer, tt_optimizer *optimizer, const examples *all, int32_t *order, progress *p) {
    tt_context *ctx = tt_model_context(model);
    int n_train = all->n - all->n / 20, steps = 0, i;
    tt_schedule schedule = TT_INIT;
    for (i = 0; i < all->n; i++) order[i] = i;
    for (i = 0; i < n_train; steps++) i += batch_size(all, order + i, n_train - i);   /* about the steps of an epoch */
    schedule.lr = learning_rate;
    schedule.total_steps = steps * epochs;
    schedule.warmup_steps = schedule.total_steps / 20;
    schedule.type = TT_LINEAR;
    p->first = p->step;
    if (stop_after && p->step >= stop_after) return 0;      /* where the checkpoint stands already */
    p->begin = tt_clock();
    for (; p->epoch < epochs; p->epoch++, p->at = 0, p->loss = p->targets = 0) {
        shuffle(order, n_train, p->epoch);
        while (p->at < n_train) {
            train_step(model, reducer, optimizer, &schedule, all, order, n_train, p);
            if (p->step == stop_after && check_updates(ctx, p->skipped) != TT_OK) fail(ctx);
            if ((p->step % save_every == 0 && p->skipped == 0) || p->step == stop_after) save_state(ctx, optimizer, p);
            if (p->step == stop_after) return 0;
        }
        printf("epoch %d/%d  loss %.4f", p->epoch + 1, epochs, p->loss / p->targets);
        if (n_train < all->n) printf("  validation loss %.4f", evaluate(model, all, order + n_train, all->n - n_train));
        printf("\n");
    }
    if (check_updates(ctx, p->skipped) != TT_OK) fail(ctx);
    return 1;
}
/* With adapters alone the base may stay in its file; but a file that is cut short meanwhile would end the run: only if asked for. */
static tt_model *open_model(tt_context *ctx) {
    tt_model *model = lora_rank && map_base && !merge ? tt_model_map(ctx, model_dir) : tt_model_load(ctx, model_dir);
    tt_lora_desc lora = TT_INIT;
    lora.rank = lora_rank;
    lora.alpha = lora_alpha;
    lora.seed = seed;
    if (!model || (lora_rank && tt_model_lora_add(model, &lora) != TT_OK)) fail(ctx);
    return model;
}
static void save_model(tt_model *model, const tt_tokenizer *tokenizer) {
    tt_context *ctx = tt_model_context(model);
    if (parallel_rank > 0) return;
    if (merge && lora_rank && tt_model_lora_merge(model) != TT_OK) fail(ctx);
    if ((tt_model_lora_get(model) ? tt_model_lora_save(model, out_dir) : tt_model_save(model, tokenizer, out_dir)) != TT_OK) fail(ctx);
}

int main(int argc, char **argv) {
    const option table[] = {
        {"--model", OPTION_REQUIRED, &model_dir, 0, 0, "directory of the model to start from"},
        {"--data", OPTION_REQUIRED, &data_path, 0, 0, "JSON lines"},
        {"--out", OPTION_REQUIRED, &out_dir, 0, 0, "directory of the new model or adapter"},
        {"--template", OPTION_TEXT, &template_text, 0, 0, "text around {question}"},
        {"--format", OPTION_TEXT, &format, 0, 0, "of messages: chatml, qwen2, qwen2.5, qwen3, smollm2, llama3, llama3.1, plain; not given = the model's own"},
        {"--date", OPTION_TEXT, &date, 0, 0, "today's, for llama3.1; not given = 26 Jul 2024"},
        {"--parse-content", OPTION_FLAG, &parse_content, 0, 0, "special tokens within messages count, as in transformers; not given = they are text"},
        {"--on-long", OPTION_TEXT, &on_long, 0, 0, "a line longer than the model's positions is left out and counted (skip), or named before any work (error)"},
        {"--epochs", OPTION_INT, &epochs, 1, 10000, "passes over the data"},
        {"--batch-tokens", OPTION_INT, &batch_tokens, 16, 1000000, "tokens of one update"},
        {"--lr", OPTION_FLOAT, &learning_rate, 1e-9, 1, "peak learning rate"},
        {"--seed", OPTION_SEED, &seed, 0, 0, "of the order of examples and of adapters"},
        {"--lora-rank", OPTION_INT, &lora_rank, 0, 65536, "train adapters of this rank on every matrix; 0 = train the whole model"},
        {"--map", OPTION_FLAG, &map_base, 0, 0, "with --lora-rank: leave the base in its file, which must not change meanwhile: less memory, slower if bf16 or f16"},
        {"--lora-alpha", OPTION_FLOAT, &lora_alpha, 0, 1e6, "adapters are scaled by this / rank; 0 = 2 rank"},
        {"--merge", OPTION_FLAG, &merge, 0, 0, "add the adapters to the weights and save a whole model"},
        {"--save-every", OPTION_INT, &save_every, 1, 100000000, "steps between checkpoints"},
        {"--stop-after", OPTION_INT, &stop_after, 0, 100000000, "end at this step, to be resumed; 0 = run to the end"},
        {"--resume", OPTION_FLAG, &resume, 0, 0, "go on from the checkpoint in --out"},
        {"--gradient-parts", OPTION_INT, &gradient_parts, 0, 1024, "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
    };
    const int n_options = (int)(sizeof table / sizeof table[0]);
    char path[4096];
    tt_text settings = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    examples all = TT_INIT;
    progress p = TT_INIT;
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;
    tt_reducer *reducer;
    tt_optimizer *optimizer;
    int32_t *order;
    int done;

    parallel_begin(&argc, &argv);
    options_read(argc, argv, "fine-tunes a model on prompts and completions", table, n_options);
    if (find_word("skip,error", on_long, strlen(on_long)) < 0) example_exit(2, "sft: --on-long is \"%s\", expected skip or error", on_long);
    option_alone("sft", merge && !lora_rank, "--merge", "without --lora-rank");
    option_alone("sft", map_base && !lora_rank, "--map", "without --lora-rank");
    option_alone("sft", lora_alpha > 0 && !lora_rank, "--lora-alpha", "without --lora-rank");
    if (!strstr(template_text, "{question}")) example_exit(2, "sft: --template is \"%s\", expected text with {question}", template_text);
    if (snprintf(path, sizeof path, "%s/tokenizer.json", model_dir) >= (int)sizeof path)
        example_exit(2, "sft: --model is longer than %d bytes", (int)sizeof path);
    ctx = tt_create(NULL);
    if (!ctx || claim_for_rank_0(ctx, out_dir) != TT_OK) fail(ctx);
    model = open_model(ctx);
    tokenizer = tt_tokenizer_load(ctx, path);
    if (!tokenizer) fail(ctx);
    if (tt_vocab_size(tokenizer) > tt_model_config_get(model)->vocab_size)
        example_exit(1, "sft: %s has %d tokens, expected at most the model's vocab_size %d", path, tt_vocab_size(tokenizer), tt_model_config_get(model)->vocab_size);
    read_examples(&all, model, tokenizer);
    say("%s: %d examples, %d held out, %d left out (longer than the model's %d positions or empty)\n", data_path, all.n,
        all.n / 20, all.n_left_out, tt_model_config_get(model)->max_position_embeddings);

    adamw.max_grad_norm = 1.0f;
    optimizer = tt_adamw_create(model, &adamw);
    reducer = optimizer ? parallel_reducer(ctx, model, gradient_parts) : NULL;
    order = (int32_t *)tt_alloc(ctx, (size_t)all.n, sizeof *order);
    if (!reducer || !order) fail(ctx);
    if (describe_settings(ctx, "sft", table, n_options, "--out,--resume,--save-every,--stop-after,--merge", "--data", &settings) != TT_OK ||
        begin_run(ctx, out_dir, &settings, state_path(), &resume) != TT_OK) fail(ctx);
    tt_text_free(&settings);
    if (resume) load_state(ctx, optimizer, all.n - all.n / 20, &p);
    done = train(model, reducer, optimizer, &all, order, &p);
    tt_reducer_destroy(reducer);
    tt_optimizer_destroy(optimizer);
    if (done) save_model(model, tokenizer);
    else printf("stopped at step %d; --resume goes on\n", p.step);
    tt_free(ctx, order, (size_t)all.n, sizeof *order);
    tt_ids_free(&all.tokens);
    tt_ids_free(&all.begin);
    tt_text_free(&all.learn);
    tt_tokenizer_destroy(tokenizer);
    tt_model_destroy(model);
    tt_destroy(ctx);
    parallel_end();
    check_output("sft");
    return 0;
}
