/* pretrain.c - a language model from nothing but a text file.
 *
 * Shows: training a byte-level BPE tokenizer, building a model, the training loop (packed batch -> log-probs ->
 * backward -> AdamW), validation, exact resume, saving a Hugging Face directory, sampling from it.
 *
 *     cc -O2 examples/pretrain.c -o build/pretrain -lm                   (or: make examples)
 *     build/pretrain --data input.txt --out runs/shakespeare
 *     build/generate --model runs/shakespeare --prompt "ROMEO:"
 *
 * As build/pretrain-mpi (make mpi) the same program shares each step's windows among the processes of mpirun.
 * The last 5 % of the text are held out. --resume goes on where the last checkpoint stands and ends with the
 * same bits as a run that was never interrupted; with other settings than the run was begun with (settings.txt), or beside another
 * config.json or tokenizer.json than the checkpoint's, it is refused. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "run.h"

static const char *end_of_text = "<|endoftext|>";

static const char *data_path, *out_dir;
static int vocab_size = 1024, hidden_size = 128, n_layers = 4, n_heads = 4, context = 128;
static int steps = 1000, batch_tokens = 2048, eval_every = 100, stop_after, resume, gradient_parts;
static float learning_rate = 3e-3f;
static uint64_t seed;

static void fail(const tt_context *ctx) { example_exit(1, "pretrain: %s", tt_error(ctx)); }

/* The tokenizer reads its training text through a callback, so that it could come from anywhere. */
typedef struct reader { const char *at; size_t left; } reader;
static size_t read_text(void *user, char *bytes, size_t n) {
    reader *r = (reader *)user;
    if (n > r->left) n = r->left;
    memcpy(bytes, r->at, n);
    r->at += n;
    r->left -= n;
    return n;
}

static tt_tokenizer *make_tokenizer(tt_context *ctx, const tt_text *text) {
    tt_tokenizer_desc desc = TT_INIT;
    reader r;
    tt_text_source source;
    tt_tokenizer *tokenizer;
    r.at = text->data;
    r.left = text->size - text->size / 20;
    source.read = read_text;
    source.user = &r;
    desc.vocab_size = vocab_size;
    desc.all_bytes = 1;
    desc.special_tokens = &end_of_text;
    desc.n_special_tokens = 1;
    tokenizer = resume ? tt_tokenizer_load(ctx, path_of(out_dir, "tokenizer.json")) : tt_tokenizer_train(ctx, &desc, source);
    if (!tokenizer) fail(ctx);
    return tokenizer;
}

/* n windows of `length` tokens; window i begins at starts[i]. Returns mean negative log-likelihood. */
static tt_tensor *window_loss(tt_model *model, const int32_t *ids, const size_t *starts, int n, int length) {
    tt_context *ctx = tt_model_context(model);
    tt_batch_desc desc = TT_INIT;
    tt_tensor *loss = NULL;
    int32_t *tokens = (int32_t *)tt_alloc(ctx, (size_t)n * (size_t)length, sizeof *tokens);
    int32_t *offsets = (int32_t *)tt_alloc(ctx, (size_t)n + 1, sizeof *offsets);
    int i;
    if (!tokens || !offsets) fail(ctx);
    for (i = 0; i < n; i++) {
        memcpy(tokens + (size_t)i * (size_t)length, ids + starts[i], (size_t)length * sizeof *tokens);
        offsets[i + 1] = (i + 1) * length;
    }
    desc.n_sequences = n;
    desc.offsets = offsets;
    desc.tokens = tokens;
    loss = tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(model, tt_batch_create(ctx, &desc), 1.0f, NULL)));
    tt_free(ctx, tokens, (size_t)n * (size_t)length, sizeof *tokens);
    tt_free(ctx, offsets, (size_t)n + 1, sizeof *offsets);
    return loss;
}

/* Up to 64 windows spread evenly over the held-out tokens. */
static double validate(tt_model *model, const int32_t *ids, size_t n, int length) {
    tt_context *ctx = tt_model_context(model);
    size_t starts[64], count = n / (size_t)length, i;
    double loss;
    if (count > 64) count = 64;
    for (i = 0; i < count; i++) starts[i] = (n - (size_t)length) * i / count;
    tt_no_grad_begin(ctx);
    loss = tt_item(window_loss(model, ids, starts, (int)count, length));
    tt_no_grad_end(ctx);
    if (tt_eval(ctx) != TT_OK) fail(ctx);
    tt_step_reset(ctx);
    return loss;
}

/* Mean over all windows; each process has some parts of them, one process all. */
static double backward(tt_model *model, tt_reducer *reducer, const int32_t *ids, const size_t *starts, int n_windows) {
    tt_context *ctx = tt_model_context(model);
    const tt_reducer_desc *d = tt_reducer_desc_get(reducer);
    int own = d->n_parts / d->world_size, part;
    double sum = 0;
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = n_windows * part / d->n_parts, end = n_windows * (part + 1) / d->n_parts;
        if (begin < end) {
            tt_tensor *loss = tt_scale(ctx, window_loss(model, ids, starts + begin, end - begin, context), (float)(end - begin) / (float)n_windows);
            if (tt_backward(ctx, loss) != TT_OK) fail(ctx);
            sum += tt_item(loss);
            tt_step_reset(ctx);
        }
        if (tt_reducer_add(reducer) != TT_OK) fail(ctx);
    }
    if (tt_reducer_sum(reducer) != TT_OK) fail(ctx);
    return parallel_add(sum);
}

/* Draws step's windows from the stream that the step names: resuming needs no state of a generator. */
static double train_step(tt_model *model, tt_reducer *reducer, tt_optimizer *optimizer, const int32_t *ids, size_t n, int step, int *skipped) {
    tt_context *ctx = tt_model_context(model);
    tt_schedule schedule = TT_INIT;
    size_t starts[1024];
    int i, n_windows = batch_tokens / context;
    double loss;
    if (n_windows < 1) n_windows = 1;
    if (n_windows > 1024) n_windows = 1024;
    for (i = 0; i < n_windows; i++) starts[i] = (size_t)(tt_random(seed, (uint64_t)step + 1, (uint64_t)i) % (n - (size_t)context + 1));
    schedule.lr = learning_rate;
    schedule.min_lr = learning_rate / 10;
    schedule.warmup_steps = steps / 20;
    schedule.total_steps = steps;
    schedule.type = TT_COSINE;
    loss = backward(model, reducer, ids, starts, n_windows);
    if (take_update(ctx, optimizer, tt_learning_rate(&schedule, step), step + 1, skipped) != TT_OK) fail(ctx);
    return loss;
}

/* What a checkpoint belongs to and does not hold itself. */
static const char *const beside[] = {"config.json", "tokenizer.json"};
/* The checkpoint is the one of the last update that was made. */
static void save(tt_context *ctx, tt_model *model, const tt_tokenizer *tokenizer, tt_optimizer *optimizer, int step) {
    tt_text json = TT_INIT, file = TT_INIT;
    tt_status status;
    int i;
    if (parallel_rank > 0) return;
    json.ctx = file.ctx = ctx;
    status = tt_model_save(model, tokenizer, out_dir);
    if (status == TT_OK) status = tt_text_format(&json, "{\"step\": %d", step);
    for (i = 0; i < 2 && status == TT_OK; i++) {
        file.size = 0;
        status = describe_file(ctx, path_of(out_dir, "%s", beside[i]), &file);
        if (status == TT_OK) status = tt_text_format(&json, ", \"%s\": ", beside[i]);
        if (status == TT_OK) status = tt_text_json(&json, file.data, file.size);
    }
    if (status == TT_OK) status = tt_text_append(&json, "}", 1);
    if (status == TT_OK) status = tt_optimizer_save(optimizer, path_of(out_dir, "training.safetensors"), json.data, NULL, 0);
    if (status != TT_OK) fail(ctx);
    tt_text_free(&json);
    tt_text_free(&file);
}
/* Back to the checkpoint; returns its step. The model in the folder becomes the checkpoint's, whatever was done to it. */
static int load(tt_context *ctx, tt_model *model, const tt_tokenizer *tokenizer, tt_optimizer *optimizer) {
    const char *path = path_of(out_dir, "training.safetensors");
    tt_text state = TT_INIT, file = TT_INIT;
    tt_json *json;
    int step, i;
    state.ctx = file.ctx = ctx;
    if (tt_optimizer_load(optimizer, path, &state, NULL, 0) != TT_OK) fail(ctx);
    json = tt_json_parse(ctx, state.data, state.size);
    if (!json || state_count(ctx, path, json, "step", steps, &step) != TT_OK) fail(ctx);
    for (i = 0; i < 2; i++) {
        file.size = 0;
        if (describe_file(ctx, path_of(out_dir, "%s", beside[i]), &file) != TT_OK) fail(ctx);
        if (strcmp(file.data, tt_json_text(json, beside[i], "")) != 0)
            example_exit(1, "pretrain: %s/%s is not the one that the checkpoint there was made with: put that back, or begin without --resume", out_dir, beside[i]);
    }
    if (parallel_rank == 0 && tt_model_save(model, tokenizer, out_dir) != TT_OK) fail(ctx);
    tt_json_free(ctx, json);
    tt_text_free(&state);
    tt_text_free(&file);
    return step;
}

static void print_sample(tt_context *ctx, tt_model *model, const tt_tokenizer *tokenizer, const int32_t *prompt, int length) {
    tt_request request = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tt_completions out = TT_INIT;
    tt_text text = TT_INIT;
    text.ctx = ctx;
    request.prompt = prompt;
    request.prompt_length = length;
    sampling.max_new_tokens = context - length;
    sampling.temperature = 0.8f;
    sampling.seed = seed;
    if (tt_generate(model, &request, 1, &sampling, &out) != TT_OK) fail(ctx);
    if (tt_decode(tokenizer, prompt, (size_t)length, 1, &text) != TT_OK ||
        tt_text_append(&text, "|", 1) != TT_OK ||
        tt_decode(tokenizer, out.items[0].tokens, (size_t)out.items[0].length, 1, &text) != TT_OK) fail(ctx);
    printf("---- held-out prompt | sample\n%s\n----\n", text.data);
    tt_text_free(&text);
    tt_completions_free(&out);
}

int main(int argc, char **argv) {
    const option table[] = {
        {"--data", OPTION_REQUIRED, &data_path, 0, 0, "text file to learn"},
        {"--out", OPTION_REQUIRED, &out_dir, 0, 0, "directory of the model"},
        {"--vocab-size", OPTION_INT, &vocab_size, 257, 1000000, "entries of the tokenizer"},
        {"--hidden-size", OPTION_INT, &hidden_size, 8, 65536, "width of the model"},
        {"--layers", OPTION_INT, &n_layers, 1, 1000, "number of layers"},
        {"--heads", OPTION_INT, &n_heads, 1, 1000, "attention heads; must divide the width"},
        {"--context", OPTION_INT, &context, 16, 1000000, "tokens of one training window"},
        {"--steps", OPTION_INT, &steps, 1, 100000000, "updates"},
        {"--batch-tokens", OPTION_INT, &batch_tokens, 16, 1000000, "tokens of one update"},
        {"--lr", OPTION_FLOAT, &learning_rate, 1e-9, 1, "peak learning rate"},
        {"--eval-every", OPTION_INT, &eval_every, 1, 100000000, "steps between validations and checkpoints"},
        {"--stop-after", OPTION_INT, &stop_after, 0, 100000000, "end at this step, to be resumed; 0 = run to the end"},
        {"--seed", OPTION_SEED, &seed, 0, 0, "of weights and batches"},
        {"--resume", OPTION_FLAG, &resume, 0, 0, "go on from the checkpoint in --out"},
        {"--gradient-parts", OPTION_INT, &gradient_parts, 0, 1024, "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
    };
    const int n_options = (int)(sizeof table / sizeof table[0]);
    tt_model_config config = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    tt_context *ctx;
    tt_tokenizer *tokenizer;
    tt_model *model;
    tt_reducer *reducer;
    tt_optimizer *optimizer;
    tt_text text = TT_INIT, settings = TT_INIT;
    tt_ids ids = TT_INIT;
    size_t n_train;
    int step = 0, skipped = 0, first, end;
    double begin;

    parallel_begin(&argc, &argv);
    options_read(argc, argv, "trains a tokenizer and a model on a text file", table, n_options);
    ctx = tt_create(NULL);
    text.ctx = ids.ctx = ctx;
    if (!ctx || claim_for_rank_0(ctx, out_dir) != TT_OK || tt_file_read(ctx, data_path, &text) != TT_OK) fail(ctx);
    if (describe_settings(ctx, "pretrain", table, n_options, "--out,--resume,--eval-every,--stop-after", "--data", &settings) != TT_OK ||
        begin_run(ctx, out_dir, &settings, path_of(out_dir, "training.safetensors"), &resume) != TT_OK) fail(ctx);
    tt_text_free(&settings);
    tokenizer = make_tokenizer(ctx, &text);
    if (tt_encode(tokenizer, text.data, text.size, TT_SPECIAL_TEXT, &ids) != TT_OK) fail(ctx);
    n_train = ids.size - ids.size / 20;
    if (ids.size / 20 < (size_t)context)
        example_exit(1, "pretrain: --data %s has %lu tokens, --context %d needs at least %lu", data_path,
                     (unsigned long)ids.size, context, 20ul * (unsigned long)context);

    config.vocab_size = tt_vocab_size(tokenizer);
    config.hidden_size = hidden_size;
    config.num_hidden_layers = n_layers;
    config.num_attention_heads = n_heads;
    config.max_position_embeddings = context;
    config.tie_word_embeddings = 1;
    config.bos_token_id = config.eos_token_id = tt_token_id(tokenizer, end_of_text);
    adamw.beta2 = 0.99f;
    adamw.weight_decay = 0.1f;
    adamw.max_grad_norm = 1.0f;
    model = tt_model_create(ctx, &config, seed);
    optimizer = model ? tt_adamw_create(model, &adamw) : NULL;
    reducer = optimizer ? parallel_reducer(ctx, model, gradient_parts) : NULL;
    if (!reducer) fail(ctx);
    if (resume) step = load(ctx, model, tokenizer, optimizer);
    say("%s: %lu tokens, vocabulary %d, model of %lu weights, %d threads, %s kernels\n", data_path,
        (unsigned long)ids.size, config.vocab_size, (unsigned long)tt_model_size(model), tt_threads(ctx), tt_kernel(ctx));

    end = stop_after && stop_after < steps ? stop_after : steps;
    if (step >= end) say("%s stands at step %d already: there is nothing to do up to step %d\n", path_of(out_dir, "training.safetensors"), step, end);
    begin = tt_clock();
    for (first = step; step < end; step++) {
        double loss = train_step(model, reducer, optimizer, ids.data, n_train, step, &skipped), seconds = tt_clock() - begin;
        int done = step + 1 - first, last = step + 1 == end;
        if ((step + 1) % 10 == 0 || last) {
            printf("step %d/%d  loss %.4f  %.0f tokens/s  %s left\n", step + 1, steps, loss,
                   seconds > 0 ? (double)done * (batch_tokens / context) * context / seconds : 0, clock_text(seconds / done * (steps - step - 1)));
            fflush(stdout);
        }
        if ((step + 1) % eval_every == 0 || last) {
            printf("step %d/%d  validation loss %.4f\n", step + 1, steps,
                   validate(model, ids.data + n_train, ids.size - n_train, context));
            if (last && check_updates(ctx, skipped) != TT_OK) fail(ctx);
            if (skipped == 0) save(ctx, model, tokenizer, optimizer, step + 1);
        }
    }
    print_sample(ctx, model, tokenizer, ids.data + n_train, context / 8);
    tt_reducer_destroy(reducer);
    tt_optimizer_destroy(optimizer);
    tt_model_destroy(model);
    tt_tokenizer_destroy(tokenizer);
    tt_ids_free(&ids);
    tt_text_free(&text);
    tt_destroy(ctx);
    parallel_end();
    check_output("pretrain");
    return 0;
}
