/* sft.c - supervised fine-tuning on questions and answers; only the answer is learnt.
 *
 * Shows: reading JSON lines, packing sequences of any length without padding, a loss mask, epochs and shuffling.
 *
 *     cc -O2 examples/sft.c -o build/sft -lm                             (or: make examples)
 *     build/sft --model runs/shakespeare --data answers.jsonl --out runs/answers --epochs 3
 *
 * A line is {"question": ..., "answer": ...}, put into --template, or {"prompt": ..., "completion": ...}, taken as
 * it is. The model's end token is appended to the answer. The last 5 % of the lines are held out. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

/* All examples end to end; example i is tokens[begin[i] .. begin[i+1]), its answer starts at answer[i]. */
typedef struct examples {
    tt_ids tokens, begin, answer;
    int n, n_too_long;
} examples;

static const char *model_dir, *data_path, *out_dir, *template_text = "Question: {question}\nAnswer: ";
static int epochs = 3, batch_tokens = 2048;
static float learning_rate = 1e-4f;
static uint64_t seed;

static void fail(const tt_context *ctx) { example_exit(1, "sft: %s", tt_error(ctx)); }

static void add_prompt(tt_text *out, const tt_json *record, size_t line) {
    const char *question = tt_json_text(record, "question", NULL), *prompt = tt_json_text(record, "prompt", NULL);
    const char *mark = strstr(template_text, "{question}");
    tt_status status;
    if (prompt) {
        status = tt_text_append(out, prompt, strlen(prompt));
    } else {
        if (!question) example_exit(1, "sft: --data %s: line %lu has neither \"question\" nor \"prompt\"", data_path, (unsigned long)line);
        status = tt_text_format(out, "%.*s%s%s", (int)(mark - template_text), template_text, question, mark + strlen("{question}"));
    }
    if (status != TT_OK) fail(out->ctx);
}

/* Question and answer are encoded apart, so that the border between them is the same as in sampling. */
static void add_example(examples *all, tt_model *model, const tt_tokenizer *tokenizer, const tt_json *record, size_t line) {
    tt_context *ctx = tt_model_context(model);
    const tt_model_config *config = tt_model_config_get(model);
    const char *answer = tt_json_text(record, "answer", tt_json_text(record, "completion", NULL));
    tt_text prompt = TT_INIT;
    int32_t begin = (int32_t)all->tokens.size, answer_at, end = config->eos_token_id;
    prompt.ctx = ctx;
    if (!answer) example_exit(1, "sft: --data %s: line %lu has neither \"answer\" nor \"completion\"", data_path, (unsigned long)line);
    add_prompt(&prompt, record, line);
    if (tt_encode(tokenizer, prompt.data, prompt.size, TT_SPECIAL_PARSE, &all->tokens) != TT_OK) fail(ctx);
    answer_at = (int32_t)all->tokens.size;
    if (answer_at == begin) example_exit(1, "sft: --data %s: line %lu has an empty prompt", data_path, (unsigned long)line);
    if (tt_encode(tokenizer, answer, strlen(answer), TT_SPECIAL_TEXT, &all->tokens) != TT_OK ||
        (end >= 0 && tt_ids_append(&all->tokens, &end, 1) != TT_OK)) fail(ctx);
    tt_text_free(&prompt);
    if ((int)all->tokens.size - begin > config->max_position_embeddings || (int)all->tokens.size == answer_at) {
        all->tokens.size = (size_t)begin;
        all->n_too_long++;
        return;
    }
    if (tt_ids_append(&all->begin, &begin, 1) != TT_OK || tt_ids_append(&all->answer, &answer_at, 1) != TT_OK) fail(ctx);
    all->n++;
}

static void read_examples(examples *all, tt_model *model, const tt_tokenizer *tokenizer) {
    tt_context *ctx = tt_model_context(model);
    tt_text text = TT_INIT;
    size_t at = 0, line;
    int32_t end;
    text.ctx = all->tokens.ctx = all->begin.ctx = all->answer.ctx = ctx;
    if (tt_file_read(ctx, data_path, &text) != TT_OK) fail(ctx);
    for (line = 1; at < text.size; line++) {
        const char *stop = (const char *)memchr(text.data + at, '\n', text.size - at);
        size_t size = stop ? (size_t)(stop - text.data) - at : text.size - at;
        if (size > 0 && text.data[at] != '\r') {
            tt_json *record = tt_json_parse(ctx, text.data + at, size);
            if (!record) example_exit(1, "sft: --data %s: line %lu: %s", data_path, (unsigned long)line, tt_error(ctx));
            add_example(all, model, tokenizer, record, line);
            tt_json_free(ctx, record);
        }
        at += size + 1;
    }
    end = (int32_t)all->tokens.size;
    if (tt_ids_append(&all->begin, &end, 1) != TT_OK) fail(ctx);
    tt_text_free(&text);
}

/* Mean negative log-likelihood of the answers of order[0..n). */
static tt_tensor *answer_loss(tt_context *ctx, tt_model *model, const examples *all, const int32_t *order, int n) {
    tt_batch_desc desc = TT_INIT;
    tt_ids tokens = TT_INIT, offsets = TT_INIT;
    unsigned char *mask;
    tt_tensor *loss;
    int32_t zero = 0;
    size_t n_tokens;
    int i, k;
    tokens.ctx = offsets.ctx = ctx;
    if (tt_ids_append(&offsets, &zero, 1) != TT_OK) fail(ctx);
    for (i = 0; i < n; i++) {
        int32_t begin = all->begin.data[order[i]], end = all->begin.data[order[i] + 1], next;
        if (tt_ids_append(&tokens, all->tokens.data + begin, (size_t)(end - begin)) != TT_OK) fail(ctx);
        next = (int32_t)tokens.size;
        if (tt_ids_append(&offsets, &next, 1) != TT_OK) fail(ctx);
    }
    n_tokens = tokens.size;
    mask = (unsigned char *)tt_alloc(ctx, n_tokens, 1);   /* zeroed: nothing is learnt ... */
    if (!mask) fail(ctx);
    for (i = 0; i < n; i++)                               /* ... but the answers */
        for (k = offsets.data[i] + all->answer.data[order[i]] - all->begin.data[order[i]]; k < offsets.data[i + 1]; k++) mask[k] = 1;
    desc.n_sequences = n;
    desc.offsets = offsets.data;
    desc.tokens = tokens.data;
    desc.mask = mask;
    loss = tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &desc), 1.0f, NULL)));
    tt_free(ctx, mask, n_tokens, 1);
    tt_ids_free(&tokens);
    tt_ids_free(&offsets);
    return loss;
}

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

/* One pass over order[0..n): training with an optimizer, measuring without. Returns the mean loss of its batches. */
static double run_epoch(tt_context *ctx, tt_model *model, const examples *all, const int32_t *order, int n,
                        tt_optimizer *optimizer, const tt_schedule *schedule, int *step) {
    double sum = 0, begin = tt_clock();
    int at = 0, batches = 0, size;
    if (!optimizer) tt_no_grad_begin(ctx);
    for (; at < n; at += size, batches++) {
        tt_tensor *loss;
        size = batch_size(all, order + at, n - at);
        loss = answer_loss(ctx, model, all, order + at, size);
        if ((optimizer ? tt_backward(ctx, loss) : tt_eval(ctx)) != TT_OK) fail(ctx);
        sum += tt_item(loss);
        if (optimizer) {
            if (tt_optimizer_step(optimizer, tt_learning_rate(schedule, *step), NULL) != TT_OK) fail(ctx);
            if (++*step % 10 == 0)
                printf("step %d  loss %.4f  %.0f s left in this epoch\n", *step, tt_item(loss), (tt_clock() - begin) / (at + size) * (n - at - size));
        }
        tt_step_reset(ctx);
        fflush(stdout);
    }
    if (!optimizer) tt_no_grad_end(ctx);
    return batches ? sum / batches : 0;
}

int main(int argc, char **argv) {
    const option table[] = {
        {"--model", OPTION_REQUIRED, &model_dir, 0, 0, "directory of the model to start from"},
        {"--data", OPTION_REQUIRED, &data_path, 0, 0, "JSON lines"},
        {"--out", OPTION_REQUIRED, &out_dir, 0, 0, "directory of the new model"},
        {"--template", OPTION_TEXT, &template_text, 0, 0, "text around {question}"},
        {"--epochs", OPTION_INT, &epochs, 1, 10000, "passes over the data"},
        {"--batch-tokens", OPTION_INT, &batch_tokens, 16, 1000000, "tokens of one update"},
        {"--lr", OPTION_FLOAT, &learning_rate, 1e-9, 1, "peak learning rate"},
        {"--seed", OPTION_SEED, &seed, 0, 0, "of the order of examples"},
    };
    char path[4096];
    tt_schedule schedule = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    examples all = TT_INIT;
    tt_context *ctx;
    tt_model *model;
    tt_tokenizer *tokenizer;
    tt_optimizer *optimizer;
    int32_t *order;
    int i, epoch, n_train, step = 0;

    options_read(argc, argv, "fine-tunes a model on questions and answers", table, (int)(sizeof table / sizeof table[0]));
    if (!strstr(template_text, "{question}")) example_exit(2, "sft: --template is \"%s\", expected text with {question}", template_text);
    if (snprintf(path, sizeof path, "%s/tokenizer.json", model_dir) >= (int)sizeof path)
        example_exit(2, "sft: --model is longer than %d bytes", (int)sizeof path);
    ctx = tt_create(NULL);
    model = ctx ? tt_model_load(ctx, model_dir) : NULL;
    tokenizer = model ? tt_tokenizer_load(ctx, path) : NULL;
    if (!tokenizer) fail(ctx);
    read_examples(&all, model, tokenizer);
    n_train = all.n - all.n / 20;
    printf("%s: %d examples, %d held out, %d left out (longer than the model's %d positions or empty)\n", data_path, all.n,
           all.n - n_train, all.n_too_long, tt_model_config_get(model)->max_position_embeddings);
    if (all.n == 0) example_exit(1, "sft: --data %s holds no example", data_path);

    adamw.max_grad_norm = 1.0f;
    optimizer = tt_adamw_create(model, &adamw);
    order = (int32_t *)tt_alloc(ctx, (size_t)all.n, sizeof *order);
    if (!optimizer || !order) fail(ctx);
    for (i = 0; i < all.n; i++) order[i] = i;
    for (i = 0; i < n_train; step++) i += batch_size(&all, order + i, n_train - i);   /* about the steps of an epoch */
    schedule.lr = learning_rate;
    schedule.total_steps = step * epochs;
    schedule.warmup_steps = schedule.total_steps / 20;
    schedule.type = TT_LINEAR;
    step = 0;
    for (epoch = 0; epoch < epochs; epoch++) {
        tt_rng rng = TT_INIT;
        double loss;
        rng.seed = seed;
        rng.stream = (uint64_t)epoch;
        for (i = n_train - 1; i > 0; i--) {
            int k = tt_rng_below(&rng, i + 1);
            int32_t swap = order[i];
            order[i] = order[k];
            order[k] = swap;
        }
        loss = run_epoch(ctx, model, &all, order, n_train, optimizer, &schedule, &step);
        printf("epoch %d/%d  loss %.4f", epoch + 1, epochs, loss);
        if (n_train < all.n) printf("  validation loss %.4f", run_epoch(ctx, model, &all, order + n_train, all.n - n_train, NULL, NULL, NULL));
        printf("\n");
    }
    if (tt_model_save(model, tokenizer, out_dir) != TT_OK) fail(ctx);
    tt_free(ctx, order, (size_t)all.n, sizeof *order);
    tt_optimizer_destroy(optimizer);
    tt_ids_free(&all.tokens);
    tt_ids_free(&all.begin);
    tt_ids_free(&all.answer);
    tt_tokenizer_destroy(tokenizer);
    tt_model_destroy(model);
    tt_destroy(ctx);
    return 0;
}
