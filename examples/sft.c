/* sft.c - supervised fine-tuning on JSON lines; only completions are learnt.
 *
 * Shows: reading JSON lines, packing sequences of any length without padding, a loss mask, epochs and
 * shuffling, evaluation, adapters (LoRA) over a frozen base that stays in its file, a run that is killed and
 * goes on exactly.
 *
 *     cc -O2 examples/sft.c -o build/sft -lm                             (or: make examples)
 *     build/sft --model runs/shakespeare --data answers.jsonl --out runs/answers --epochs 3
 *     build/sft --model SmolLM2-135M-Instruct --data chats.jsonl --out runs/adapter --lora-rank 16 --lr 2e-4
 *     build/sft ... --resume                                             (after a crash or --stop-after)
 *
 * A line is {"prompt": ..., "completion": ...}, taken as it is; or {"question" or "problem": ...,
 * "answer": ...}, put into --template; or {"messages": [{"role": ..., "content": ...}, ...]}, a conversation
 * whose assistant turns are learnt. Special tokens count in prompt, template and chat template; question,
 * answer, completion and the contents of messages are text, as they are in reinforcement learning
 * (--parse-content: contents as transformers reads them). A prompt begins as the tokenizer's file says
 * (Llama: with its BOS). The model's end token is appended to a completion. A line that is longer than the
 * model's positions is left out and counted, or (--on-long error) named before any work. The last 5 % of the
 * lines are held out. With --lora-rank, --out is a directory of peft, or with --merge a whole model. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "run.h"
#include <limits.h>

/* ---- options ---- */
static const char *model_dir, *data_path, *out_dir, *on_long = "skip", *format, *date;
static const char *template_text = "Question: {question}\nAnswer: ";
static int epochs = 3, batch_tokens = 2048, lora_rank, merge, map_base, resume, save_every = 100, stop_after;
static int parse_content, gradient_parts;
static float learning_rate = 1e-4f, lora_alpha;
static uint64_t seed;

static const option table[] = {
    {"--model", OPTION_REQUIRED, &model_dir, 0, 0, "directory of the model to start from"},
    {"--data", OPTION_REQUIRED, &data_path, 0, 0, "JSON lines"},
    {"--out", OPTION_REQUIRED, &out_dir, 0, 0, "directory of the new model or adapter"},
    {"--template", OPTION_TEXT, &template_text, 0, 0, "text around {question}"},
    {"--format", OPTION_TEXT, &format, 0, 0,
     "of messages: chatml, qwen2, qwen2.5, qwen3, smollm2, llama3, llama3.1, plain; not given = the "
     "model's own"},
    {"--date", OPTION_TEXT, &date, 0, 0, "today's, for llama3.1; not given = 26 Jul 2024"},
    {"--parse-content", OPTION_FLAG, &parse_content, 0, 0,
     "special tokens within messages count, as in transformers; not given = they are text"},
    {"--on-long", OPTION_TEXT, &on_long, 0, 0,
     "a line longer than the model's positions is left out and counted (skip), or named before any work "
     "(error)"},
    {"--epochs", OPTION_INT, &epochs, 1, 10000, "passes over the data"},
    {"--batch-tokens", OPTION_INT, &batch_tokens, 16, 1000000, "tokens of one update"},
    {"--lr", OPTION_FLOAT, &learning_rate, 1e-9, 1, "peak learning rate"},
    {"--seed", OPTION_SEED, &seed, 0, 0, "of the order of examples and of adapters"},
    {"--lora-rank", OPTION_INT, &lora_rank, 0, 65536,
     "train adapters of this rank on every matrix; 0 = train the whole model"},
    {"--map", OPTION_FLAG, &map_base, 0, 0,
     "with --lora-rank: leave the base in its file, which must not change meanwhile: less memory, slower "
     "if bf16 or f16"},
    {"--lora-alpha", OPTION_FLOAT, &lora_alpha, 0, 1e6, "adapters are scaled by this / rank; 0 = 2 rank"},
    {"--merge", OPTION_FLAG, &merge, 0, 0, "add the adapters to the weights and save a whole model"},
    {"--save-every", OPTION_INT, &save_every, 1, 100000000, "steps between checkpoints"},
    {"--stop-after", OPTION_INT, &stop_after, 0, 100000000,
     "end at this step, to be resumed; 0 = run to the end"},
    {"--resume", OPTION_FLAG, &resume, 0, 0, "go on from the checkpoint in --out"},
    {"--gradient-parts", OPTION_INT, &gradient_parts, 0, 1024,
     "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
};
enum { N_OPTIONS = sizeof table / sizeof *table };

static void check_options(void) {
    if (find_word("skip,error", on_long, strlen(on_long)) < 0) {
        example_exit(2, "sft: --on-long is \"%s\", expected skip or error", on_long);
    }
    option_alone("sft", merge && !lora_rank, "--merge", "without --lora-rank");
    option_alone("sft", map_base && !lora_rank, "--map", "without --lora-rank");
    option_alone("sft", lora_alpha > 0 && !lora_rank, "--lora-alpha", "without --lora-rank");
    if (!strstr(template_text, "{question}")) {
        example_exit(2, "sft: --template is \"%s\", expected text with {question}", template_text);
    }
}

/* ---- the run ---- */
/* All examples end to end; example i is tokens[begin[i] .. begin[i+1]). */
typedef struct examples {
    tt_ids tokens, begin;
    tt_text learn;                /* one byte for each token, 1 = part of a completion              */
    int n, n_left_out, n_conversations;
} examples;

/* Where a run stands: everything but weights and moments, which tt_optimizer_save keeps. */
typedef struct progress {
    int epoch, at, step;          /* at: examples of this epoch that are learnt                     */
    double loss, targets;         /* sums of this epoch                                             */
    int first, skipped;           /* of this start: its first step, updates left out in a row       */
    double begin;                 /* and its clock                                                  */
} progress;

/* All that the program owns: main closes it, whatever failed. */
typedef struct run {
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;
    tt_optimizer *optimizer;
    tt_reducer *reducer;
    examples all;
    progress now;
    int32_t *order;               /* places in `all`: the n_train of this epoch, then those held out */
    int n_train;
    tt_ids ids, answer, offsets;  /* room for the line or batch at hand                             */
    tt_text text, longer;
} run;

static const char *state_path(void) { return path_of(out_dir, "training.safetensors"); }

/* ---- data ---- */
static tt_status bad_line(const run *r, size_t line, const char *what) {
    char why[1024];
    snprintf(why, sizeof why, "%s", what);      /* which may be the error that this one takes the place of */
    return tt_fail(r->ctx, TT_ERR_FILE, "--data %s: line %lu %s", data_path, (unsigned long)line, why);
}

static tt_status add_ids(examples *all, const tt_ids *ids, int learn) {
    const char mark = (char)learn;
    CHECK(tt_ids_append(&all->tokens, ids->data, ids->size));
    while (all->learn.size < all->tokens.size) { CHECK(tt_text_append(&all->learn, &mark, 1)); }
    return TT_OK;
}

/* A text of the record under one of two names; NULL if it has neither. A number counts where numbers do. */
static tt_status text_of(const tt_json_lines *lines, const tt_json *record, const char *name,
                         const char *other, int numbers, const char **out) {
    CHECK(tt_json_lines_text(lines, record, name, numbers, out));
    return *out ? TT_OK : tt_json_lines_text(lines, record, other, numbers, out);
}

/* Prompt and completion are encoded apart, so that the border between them is the same as in sampling. */
static tt_status add_pair(run *r, const tt_json_lines *lines, const tt_json *record) {
    const char *prompt, *question, *completion, *text;
    int32_t end = tt_model_config_get(r->model)->eos_token_id;
    size_t line = (size_t)lines->line, size;
    CHECK(text_of(lines, record, "prompt", "prompt", 0, &prompt));
    CHECK(text_of(lines, record, "question", "problem", 0, &question));
    CHECK(text_of(lines, record, "completion", "answer", 1, &completion));
    if (!completion) {
        return bad_line(r, line, "has neither \"completion\" nor \"answer\" nor \"messages\"");
    }
    if (!prompt && !question) {
        return bad_line(r, line, "has neither \"prompt\" nor \"question\" nor \"messages\"");
    }
    text = prompt ? prompt : template_text;
    if (prompt) { question = NULL; }
    size = question ? strlen(question) : 0;
    r->ids.size = r->answer.size = 0;
    CHECK(tt_encode_prompt(r->tokenizer, text, strlen(text), question, size, &r->ids));
    if (r->ids.size == 0) { return bad_line(r, line, "has an empty prompt"); }
    CHECK(tt_encode(r->tokenizer, completion, strlen(completion), TT_SPECIAL_TEXT, &r->answer));
    if (end >= 0) { CHECK(tt_ids_append(&r->answer, &end, 1)); }
    CHECK(add_ids(&r->all, &r->ids, 0));
    return add_ids(&r->all, &r->answer, 1);
}

/* Ends the example that has been gathered since the last one, if it fits the model and has something to
 * learn. */
static tt_status close_example(run *r, size_t line) {
    examples *all = &r->all;
    int32_t begin = all->begin.data[all->n], end = (int32_t)all->tokens.size;
    int positions = tt_model_config_get(r->model)->max_position_embeddings, length = (int)(end - begin);
    if (length > positions && strcmp(on_long, "error") == 0) {
        return tt_fail(r->ctx, TT_ERR_FILE, "--data %s: line %lu has %d tokens, the model holds %d; "
                       "--on-long skip leaves such lines out",
                       data_path, (unsigned long)line, length, positions);
    }
    if (length > positions || !memchr(all->learn.data + begin, 1, (size_t)length)) {
        all->tokens.size = all->learn.size = (size_t)begin;
        all->n_left_out++;
        return TT_OK;
    }
    CHECK(tt_ids_append(&all->begin, &end, 1));
    all->n++;
    return TT_OK;
}

/* The last of n messages, a turn of the assistant, is learnt after all that stands before it. Where that does
 * not begin with the example so far (r->text), because the template changes earlier turns (Qwen 3 drops their
 * thoughts), the turn begins an example of its own. */
static tt_status add_turn(run *r, tt_chat_desc *chat, const tt_message *messages, int n, size_t line) {
    r->longer.size = r->ids.size = r->answer.size = 0;
    CHECK(tt_chat_render(r->ctx, chat, messages, n, &r->longer));
    if (r->text.size > 0 &&
        (r->text.size > r->longer.size || memcmp(r->longer.data, r->text.data, r->text.size) != 0)) {
        CHECK(close_example(r, line));
        r->text.size = 0;
    }
    chat->from = r->text.size;
    if (tt_chat_encode(r->ctx, chat, messages, n, &r->ids, &r->answer) != TT_OK) {
        return bad_line(r, line, tt_error(r->ctx));
    }
    CHECK(add_ids(&r->all, &r->ids, 0));
    CHECK(add_ids(&r->all, &r->answer, 1));
    r->text.size = 0;
    return tt_text_append(&r->text, r->longer.data, r->longer.size);
}

/* Each turn of the assistant is learnt once. */
static tt_status add_messages(run *r, const tt_json_lines *lines, const tt_json *list) {
    enum { MOST = 256 };
    size_t line = (size_t)lines->line;
    tt_chat_desc chat = TT_INIT;
    tt_message messages[MOST];
    const tt_json *node;
    int n = 0, n_learnt = 0;
    if (list->type != TT_JSON_ARRAY) { return bad_line(r, line, "has \"messages\" that are no list"); }
    if (!format) { format = tt_model_chat_format(r->model); }
    if (!format) { return tt_error_status(r->ctx); }
    chat.format = format;
    chat.parse_content = parse_content;
    chat.date = date;
    chat.tokenizer = r->tokenizer;
    r->text.size = 0;
    for (node = list->child; node; node = node->next, n++) {
        if (n == MOST) { return bad_line(r, line, "has more than 256 messages"); }
        CHECK(tt_json_lines_text(lines, node, "role", 0, &messages[n].role));
        CHECK(tt_json_lines_text(lines, node, "content", 0, &messages[n].content));
        if (!messages[n].role || !messages[n].content) {
            return bad_line(r, line, "has a message without \"role\" or \"content\"");
        }
        if (strcmp(messages[n].role, "assistant") != 0) { continue; }
        CHECK(add_turn(r, &chat, messages, n + 1, line));
        n_learnt++;
    }
    return n_learnt > 0 ? TT_OK : bad_line(r, line, "has no message of the assistant");
}

static tt_status add_example(run *r, const tt_json_lines *lines, const tt_json *record) {
    const tt_json *messages = tt_json_get(record, "messages");
    r->all.n_conversations += messages != NULL;
    CHECK(messages ? add_messages(r, lines, messages) : add_pair(r, lines, record));
    return close_example(r, (size_t)lines->line);
}

static tt_status read_lines(run *r, tt_json_lines *lines) {
    tt_json *record;
    tt_status status;
    for (;;) {
        CHECK(tt_json_lines_next(lines, &record));
        if (!record) { return TT_OK; }
        status = add_example(r, lines, record);
        tt_json_free(r->ctx, record);
        CHECK(status);
    }
}

static tt_status read_examples(run *r) {
    tt_json_lines lines = TT_INIT;
    int32_t zero = 0;
    tt_status status;
    lines.ctx = r->ctx;
    CHECK(tt_ids_append(&r->all.begin, &zero, 1));
    status = tt_json_lines_open(&lines, data_path);
    if (status == TT_OK) { status = read_lines(r, &lines); }
    tt_json_lines_close(&lines);
    CHECK(status);
    if (r->all.n == 0) { return tt_fail(r->ctx, TT_ERR_FILE, "--data %s holds no example", data_path); }
    if (r->all.n_conversations == 0) {
        option_alone("sft", format != NULL, "--format", "with data without messages");
        option_alone("sft", date != NULL, "--date", "with data without messages");
        option_alone("sft", parse_content, "--parse-content", "with data without messages");
    }
    return TT_OK;
}

/* ---- batches ---- */
static int example_length(const examples *all, int32_t i) {
    return (int)(all->begin.data[i + 1] - all->begin.data[i]);
}

/* How many of order[0..n) fit into one batch; at least one. */
static int batch_size(const examples *all, const int32_t *order, int n) {
    int i = 0, tokens = 0;
    for (; i < n; i++) {
        tokens += example_length(all, order[i]);
        if (i > 0 && tokens > batch_tokens) { break; }
    }
    return i;
}

/* The batch of examples order[0..n); NULL after an error. */
static tt_batch *make_batch(run *r, const int32_t *order, int n) {
    const examples *all = &r->all;
    tt_batch_desc desc = TT_INIT;
    int32_t end = 0;
    int i;
    r->ids.size = r->offsets.size = r->text.size = 0;
    if (tt_ids_append(&r->offsets, &end, 1) != TT_OK) { return NULL; }
    for (i = 0; i < n; i++) {
        int32_t begin = all->begin.data[order[i]];
        size_t length = (size_t)example_length(all, order[i]);
        end += (int32_t)length;
        if (tt_ids_append(&r->ids, all->tokens.data + begin, length) != TT_OK ||
            tt_ids_append(&r->offsets, &end, 1) != TT_OK ||
            tt_text_append(&r->text, all->learn.data + begin, length) != TT_OK) {
            return NULL;
        }
    }
    desc.n_sequences = n;
    desc.offsets = r->offsets.data;
    desc.tokens = r->ids.data;
    desc.mask = (const unsigned char *)r->text.data;
    return tt_batch_create(r->ctx, &desc);
}

/* Mean negative log-likelihood of the completions of order[0..n); how many tokens they have. */
static tt_status completion_loss(run *r, const int32_t *order, int n, tt_tensor **loss, int *n_targets) {
    tt_batch *batch = make_batch(r, order, n);
    if (!batch) { return tt_error_status(r->ctx); }
    *n_targets = batch->n_targets;
    *loss = tt_neg(r->ctx, tt_mean(r->ctx, tt_model_logprobs(r->model, batch, 1.0f, NULL)));
    return TT_OK;
}

/* Mean over all targets of the held-out examples. */
static tt_status evaluate(run *r, double *loss_out) {
    double sum = 0, targets = 0;
    int at, size, n_targets = 0;
    for (at = r->n_train; at < r->all.n; at += size) {
        tt_tensor *loss = NULL;
        tt_status status;
        size = batch_size(&r->all, r->order + at, r->all.n - at);
        tt_no_grad_begin(r->ctx);
        status = completion_loss(r, r->order + at, size, &loss, &n_targets);
        sum += tt_item(loss) * n_targets;
        tt_no_grad_end(r->ctx);
        CHECK(status);
        CHECK(tt_eval(r->ctx));
        targets += n_targets;
        tt_step_reset(r->ctx);
    }
    *loss_out = targets > 0 ? sum / targets : 0;
    return TT_OK;
}

/* The order of an epoch depends on seed and epoch alone, so a resumed run needs no state of a generator. */
static void shuffle(int32_t *order, int n, int epoch) {
    tt_rng rng = TT_INIT;
    int i;
    rng.seed = seed;
    rng.stream = (uint64_t)epoch;
    for (i = 0; i < n; i++) { order[i] = i; }
    for (i = n - 1; i > 0; i--) {
        int k = tt_rng_below(&rng, i + 1);
        int32_t swap = order[i];
        order[i] = order[k];
        order[k] = swap;
    }
}

/* ---- training ---- */
static tt_status save_state(run *r) {
    const progress *p = &r->now;
    if (parallel_rank > 0) { return TT_OK; }
    r->text.size = 0;
    CHECK(tt_text_format(&r->text, "{\"epoch\": %d, \"at\": %d, \"step\": %d, \"loss\": %r, \"targets\": %r}",
                         p->epoch, p->at, p->step, p->loss, p->targets));
    return tt_optimizer_save(r->optimizer, state_path(), r->text.data, NULL, 0);
}

static tt_status read_state(run *r, const tt_json *json) {
    progress *p = &r->now;
    long long most;
    CHECK(state_count(r->ctx, state_path(), json, "epoch", epochs - 1, &p->epoch));
    CHECK(state_count(r->ctx, state_path(), json, "at", r->n_train, &p->at));
    most = (long long)p->epoch * r->n_train + p->at;      /* a step takes one example or more */
    CHECK(state_count(r->ctx, state_path(), json, "step", most < INT_MAX ? (int)most : INT_MAX, &p->step));
    p->loss = tt_json_number(json, "loss", 0);
    p->targets = tt_json_number(json, "targets", 0);
    return TT_OK;
}

static tt_status load_state(run *r) {
    tt_json *json;
    tt_status status;
    r->text.size = 0;
    CHECK(tt_optimizer_load(r->optimizer, state_path(), &r->text, NULL, 0));
    json = tt_json_parse(r->ctx, r->text.data, r->text.size);
    status = json ? read_state(r, json) : tt_error_status(r->ctx);
    tt_json_free(r->ctx, json);
    return status;
}

/* Tokens of order[0..n) that are learnt: not the first of a text, which nothing predicts. */
static int count_targets(const examples *all, const int32_t *order, int n) {
    int i, count = 0;
    int32_t k;
    for (i = 0; i < n; i++) {
        for (k = all->begin.data[order[i]] + 1; k < all->begin.data[order[i] + 1]; k++) {
            count += all->learn.data[k] != 0;
        }
    }
    return count;
}

/* Gradients of the examples order[0..n): their share of the mean over n_targets, added to *sum. */
static tt_status backward_part(run *r, const int32_t *order, int n, int n_targets, double *sum) {
    tt_tensor *loss;
    int targets;
    if (n == 0) { return TT_OK; }
    CHECK(completion_loss(r, order, n, &loss, &targets));
    loss = tt_scale(r->ctx, loss, (float)targets / (float)n_targets);
    CHECK(tt_backward(r->ctx, loss));
    *sum += tt_item(loss);
    tt_step_reset(r->ctx);
    return TT_OK;
}

/* Mean loss over all targets of order[0..n); each process has some parts of the examples, one process all. */
static tt_status backward(run *r, const int32_t *order, int n, int n_targets, double *loss_out) {
    const tt_reducer_desc *d = tt_reducer_desc_get(r->reducer);
    int own = d->n_parts / d->world_size, part;
    double sum = 0;
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = (int)((long long)n * part / d->n_parts);
        int end = (int)((long long)n * (part + 1) / d->n_parts);
        CHECK(backward_part(r, order + begin, end - begin, n_targets, &sum));
        CHECK(tt_reducer_add(r->reducer));
    }
    CHECK(tt_reducer_sum(r->reducer));
    *loss_out = parallel_add(sum);
    return TT_OK;
}

/* One update from the batch at hand, behind which the run then stands. */
static tt_status train_step(run *r, const tt_schedule *schedule) {
    progress *p = &r->now;
    const int32_t *order = r->order + p->at;
    int size = batch_size(&r->all, order, r->n_train - p->at);
    int n_targets = count_targets(&r->all, order, size);
    float lr = tt_learning_rate(schedule, p->step);
    double loss, pace;
    CHECK(backward(r, order, size, n_targets, &loss));
    p->loss += loss * n_targets;
    p->targets += n_targets;
    CHECK(take_update(r->ctx, r->optimizer, lr, p->step + 1, &p->skipped));
    p->at += size;
    p->step++;
    pace = (tt_clock() - p->begin) / (p->step - p->first);
    if (p->step % 10 == 0) {
        printf("step %d/~%d  loss %.4f  %s left\n", p->step, schedule->total_steps, loss,
               clock_text(pace * (schedule->total_steps - p->step)));
    }
    fflush(stdout);
    return TT_OK;
}

/* Up to the end of the epoch or to --stop-after. */
static tt_status train_epoch(run *r, const tt_schedule *schedule) {
    progress *p = &r->now;
    double held_out;
    shuffle(r->order, r->n_train, p->epoch);
    while (p->at < r->n_train) {
        CHECK(train_step(r, schedule));
        if (p->step == stop_after) { CHECK(check_updates(r->ctx, p->skipped)); }
        if ((p->step % save_every == 0 && p->skipped == 0) || p->step == stop_after) { CHECK(save_state(r)); }
        if (p->step == stop_after) { return TT_OK; }
    }
    printf("epoch %d/%d  loss %.4f", p->epoch + 1, epochs, p->loss / p->targets);
    if (r->n_train < r->all.n) {
        CHECK(evaluate(r, &held_out));
        printf("  validation loss %.4f", held_out);
    }
    printf("\n");
    return TT_OK;
}

static int is_stopped(const run *r) { return stop_after && r->now.step >= stop_after; }

/* All epochs, or as far as --stop-after, where the checkpoint may stand already. */
static tt_status train(run *r) {
    progress *p = &r->now;
    tt_schedule schedule = TT_INIT;
    int steps = 0, i;
    for (i = 0; i < r->all.n; i++) { r->order[i] = i; }
    /* About as many steps as the epochs will have, whose orders differ. */
    for (i = 0; i < r->n_train; steps++) { i += batch_size(&r->all, r->order + i, r->n_train - i); }
    schedule.lr = learning_rate;
    schedule.total_steps = steps * epochs;
    schedule.warmup_steps = schedule.total_steps / 20;
    schedule.type = TT_LINEAR;
    p->first = p->step;
    p->begin = tt_clock();
    while (p->epoch < epochs && !is_stopped(r)) {
        CHECK(train_epoch(r, &schedule));
        if (is_stopped(r)) { return TT_OK; }
        p->epoch++;
        p->at = 0;
        p->loss = p->targets = 0;
    }
    return is_stopped(r) ? TT_OK : check_updates(r->ctx, p->skipped);
}

/* ---- the program ---- */
/* With adapters alone the base may stay in its file; but a file that is cut short meanwhile would end the
 * run: only if asked for. */
static tt_status open_model(run *r) {
    int stays = lora_rank && map_base && !merge;
    tt_lora_desc lora = TT_INIT;
    lora.rank = lora_rank;
    lora.alpha = lora_alpha;
    lora.seed = seed;
    r->model = stays ? tt_model_map(r->ctx, model_dir) : tt_model_load(r->ctx, model_dir);
    if (!r->model) { return tt_error_status(r->ctx); }
    return lora_rank ? tt_model_lora_add(r->model, &lora) : TT_OK;
}

static tt_status open_all(run *r) {
    const char *path;
    CHECK(claim_for_rank_0(r->ctx, out_dir));
    CHECK(open_model(r));
    path = path_of(model_dir, "tokenizer.json");
    r->tokenizer = tt_tokenizer_load(r->ctx, path);
    if (!r->tokenizer) { return tt_error_status(r->ctx); }
    CHECK(check_vocabulary(r->model, r->tokenizer, path));
    CHECK(read_examples(r));
    say("%s: %d examples, %d held out, %d left out (longer than the model's %d positions or empty)\n",
        data_path, r->all.n, r->all.n / 20, r->all.n_left_out,
        tt_model_config_get(r->model)->max_position_embeddings);
    r->n_train = r->all.n - r->all.n / 20;
    return TT_OK;
}

static tt_status open_training(run *r) {
    static const char without[] = "--out,--resume,--save-every,--stop-after,--merge,--map";
    tt_adamw_desc adamw = TT_INIT;
    adamw.max_grad_norm = 1.0f;
    r->optimizer = tt_adamw_create(r->model, &adamw);
    r->reducer = r->optimizer ? parallel_reducer(r->ctx, r->model, gradient_parts) : NULL;
    r->order = (int32_t *)tt_alloc(r->ctx, (size_t)r->all.n, sizeof *r->order);
    if (!r->reducer || !r->order) { return tt_error_status(r->ctx); }
    r->text.size = 0;
    CHECK(describe_settings(r->ctx, "sft", table, N_OPTIONS, without, "--data", &r->text));
    CHECK(begin_run(r->ctx, out_dir, &r->text, state_path(), &resume));
    return resume ? load_state(r) : TT_OK;
}

static void close_training(run *r) {
    tt_reducer_destroy(r->reducer);
    tt_optimizer_destroy(r->optimizer);
    r->reducer = NULL;
    r->optimizer = NULL;
}

static tt_status save_model(run *r) {
    if (parallel_rank > 0) { return TT_OK; }
    if (merge && lora_rank) { CHECK(tt_model_lora_merge(r->model)); }
    if (tt_model_lora_get(r->model)) { return tt_model_lora_save(r->model, out_dir); }
    return tt_model_save(r->model, r->tokenizer, out_dir);
}

static tt_status fine_tune(run *r) {
    CHECK(open_all(r));
    CHECK(open_training(r));
    CHECK(train(r));
    close_training(r);
    if (!is_stopped(r)) { return save_model(r); }
    printf("stopped at step %d; --resume goes on\n", r->now.step);
    return TT_OK;
}

static void close_all(run *r) {
    close_training(r);
    tt_free(r->ctx, r->order, (size_t)r->all.n, sizeof *r->order);
    tt_ids_free(&r->all.tokens);
    tt_ids_free(&r->all.begin);
    tt_text_free(&r->all.learn);
    tt_ids_free(&r->ids);
    tt_ids_free(&r->answer);
    tt_ids_free(&r->offsets);
    tt_text_free(&r->text);
    tt_text_free(&r->longer);
    tt_tokenizer_destroy(r->tokenizer);
    tt_model_destroy(r->model);
}

int main(int argc, char **argv) {
    run r = TT_INIT;
    tt_status status;
    parallel_begin(&argc, &argv);
    options_read(argc, argv, "fine-tunes a model on prompts and completions", table, N_OPTIONS);
    check_options();
    r.ctx = program_context("sft", NULL);
    r.all.tokens.ctx = r.all.begin.ctx = r.all.learn.ctx = r.ctx;
    r.ids.ctx = r.answer.ctx = r.offsets.ctx = r.text.ctx = r.longer.ctx = r.ctx;
    status = fine_tune(&r);
    close_all(&r);
    if (status == TT_OK) { parallel_end(); }
    return program_end("sft", r.ctx, status);
}
