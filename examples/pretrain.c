/* pretrain.c - a language model from nothing but a text file.
 *
 * Shows: training a byte-level BPE tokenizer, building a model, the training loop (packed batch -> log-probs
 * -> backward -> AdamW), validation, exact resume, saving a Hugging Face directory, sampling from it.
 *
 *     cc -O2 examples/pretrain.c -o build/pretrain -lm                   (or: make examples)
 *     build/pretrain --data input.txt --out runs/shakespeare
 *     build/generate --model runs/shakespeare --prompt "ROMEO:"
 *
 * As build/pretrain-mpi (make mpi) the same program shares each step's windows among the processes of mpirun.
 * The last 5 % of the text are held out. --resume goes on where the last checkpoint stands and ends with the
 * same bits as a run that was never interrupted; with other settings than the run was begun with
 * (settings.txt), or beside another config.json or tokenizer.json than the checkpoint's, it is refused. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "run.h"

/* ---- options ---- */
static const char *data_path, *out_dir;
static int vocab_size = 1024, hidden_size = 128, n_layers = 4, n_heads = 4, context = 128;
static int steps = 1000, batch_tokens = 2048, eval_every = 100, stop_after, resume, gradient_parts;
static float learning_rate = 3e-3f;
static uint64_t seed;

static const option table[] = {
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
    {"--stop-after", OPTION_INT, &stop_after, 0, 100000000,
     "end at this step, to be resumed; 0 = run to the end"},
    {"--seed", OPTION_SEED, &seed, 0, 0, "of weights and batches"},
    {"--resume", OPTION_FLAG, &resume, 0, 0, "go on from the checkpoint in --out"},
    {"--gradient-parts", OPTION_INT, &gradient_parts, 0, 1024,
     "sum gradients as so many parts: the same bits at 1, 2, 4, ... processes up to it; 0 = fastest"},
};
enum { N_OPTIONS = sizeof table / sizeof *table };

/* ---- the run ---- */
static const char *end_of_text = "<|endoftext|>";

/* All that the program owns: main closes it, whatever failed. */
typedef struct run {
    tt_context *ctx;
    tt_tokenizer *tokenizer;
    tt_model *model;
    tt_optimizer *optimizer;
    tt_reducer *reducer;
    tt_ids ids;                   /* the whole text; the last 5 % are held out               */
    size_t n_train;
    int step, skipped;            /* updates made; those left out, in a row                  */
    tt_text text, file;           /* room for what is read or written                        */
} run;

static const char *state_path(void) { return path_of(out_dir, "training.safetensors"); }

/* ---- the tokenizer ---- */
/* It reads its training text through a callback, so that it could come from anywhere. */
typedef struct reader { const char *at; size_t left; } reader;

static size_t read_text(void *user, char *bytes, size_t n) {
    reader *r = (reader *)user;
    if (n > r->left) { n = r->left; }
    memcpy(bytes, r->at, n);
    r->at += n;
    r->left -= n;
    return n;
}

static tt_tokenizer *train_tokenizer(tt_context *ctx, const tt_text *text) {
    tt_tokenizer_desc desc = TT_INIT;
    tt_text_source source;
    reader r;
    r.at = text->data;
    r.left = text->size - text->size / 20;
    source.read = read_text;
    source.user = &r;
    desc.vocab_size = vocab_size;
    desc.all_bytes = 1;
    desc.special_tokens = &end_of_text;
    desc.n_special_tokens = 1;
    return tt_tokenizer_train(ctx, &desc, source);
}

/* ---- losses ---- */
/* n windows of `length` tokens; window i begins at starts[i]. Returns mean negative log-likelihood. */
static tt_tensor *window_loss(run *r, const int32_t *ids, const size_t *starts, int n, int length) {
    size_t size = (size_t)n * (size_t)length, width = (size_t)length;
    tt_batch_desc desc = TT_INIT;
    tt_tensor *loss = NULL;
    int32_t *tokens = (int32_t *)tt_alloc(r->ctx, size, sizeof *tokens);
    int32_t *offsets = (int32_t *)tt_alloc(r->ctx, (size_t)n + 1, sizeof *offsets);
    int i;
    if (tokens && offsets) {
        for (i = 0; i < n; i++) {
            memcpy(tokens + (size_t)i * width, ids + starts[i], width * sizeof *tokens);
            offsets[i + 1] = (i + 1) * length;
        }
        desc.n_sequences = n;
        desc.offsets = offsets;
        desc.tokens = tokens;
        loss = tt_model_logprobs(r->model, tt_batch_create(r->ctx, &desc), 1.0f, NULL);
        loss = tt_neg(r->ctx, tt_mean(r->ctx, loss));
    }
    tt_free(r->ctx, tokens, size, sizeof *tokens);
    tt_free(r->ctx, offsets, (size_t)n + 1, sizeof *offsets);
    return loss;
}

/* Mean over up to 64 windows, spread evenly over the held-out tokens. */
static tt_status validate(run *r, double *loss_out) {
    const int32_t *ids = r->ids.data + r->n_train;
    size_t n = r->ids.size - r->n_train, length = (size_t)context;
    size_t starts[64], count = n / length < 64 ? n / length : 64, i;
    for (i = 0; i < count; i++) { starts[i] = (n - length) * i / count; }
    tt_no_grad_begin(r->ctx);
    *loss_out = tt_item(window_loss(r, ids, starts, (int)count, context));
    tt_no_grad_end(r->ctx);
    CHECK(tt_eval(r->ctx));
    tt_step_reset(r->ctx);
    return TT_OK;
}

/* Gradients of n windows: their share of the mean over all, added to *sum. */
static tt_status backward_part(run *r, const size_t *starts, int n, int n_windows, double *sum) {
    tt_tensor *loss;
    if (n == 0) { return TT_OK; }
    loss = window_loss(r, r->ids.data, starts, n, context);
    loss = tt_scale(r->ctx, loss, (float)n / (float)n_windows);
    CHECK(tt_backward(r->ctx, loss));
    *sum += tt_item(loss);
    tt_step_reset(r->ctx);
    return TT_OK;
}

/* Mean over all windows; each process has some parts of them, one process all. */
static tt_status backward(run *r, const size_t *starts, int n_windows, double *loss_out) {
    const tt_reducer_desc *d = tt_reducer_desc_get(r->reducer);
    int own = d->n_parts / d->world_size, part;
    double sum = 0;
    for (part = d->rank * own; part < (d->rank + 1) * own; part++) {
        int begin = n_windows * part / d->n_parts, end = n_windows * (part + 1) / d->n_parts;
        CHECK(backward_part(r, starts + begin, end - begin, n_windows, &sum));
        CHECK(tt_reducer_add(r->reducer));
    }
    CHECK(tt_reducer_sum(r->reducer));
    *loss_out = parallel_add(sum);
    return TT_OK;
}

/* Draws the step's windows from the stream that the step names: resuming needs no state of a generator. */
static tt_status train_step(run *r, double *loss_out) {
    enum { MOST = 1024 };
    tt_schedule schedule = TT_INIT;
    size_t starts[MOST], n_starts = r->n_train - (size_t)context + 1;
    int i, n_windows = batch_tokens / context;
    if (n_windows < 1) { n_windows = 1; }
    if (n_windows > MOST) { n_windows = MOST; }
    for (i = 0; i < n_windows; i++) {
        starts[i] = (size_t)(tt_random(seed, (uint64_t)r->step + 1, (uint64_t)i) % n_starts);
    }
    schedule.lr = learning_rate;
    schedule.min_lr = learning_rate / 10;
    schedule.warmup_steps = steps / 20;
    schedule.total_steps = steps;
    schedule.type = TT_COSINE;
    CHECK(backward(r, starts, n_windows, loss_out));
    CHECK(take_update(r->ctx, r->optimizer, tt_learning_rate(&schedule, r->step), r->step + 1, &r->skipped));
    r->step++;
    return TT_OK;
}

/* ---- the checkpoint ---- */
/* What it belongs to and does not hold itself. */
static const char *const beside[] = {"config.json", "tokenizer.json"};

/* The checkpoint is the one of the last update that was made. */
static tt_status save(run *r) {
    int i;
    if (parallel_rank > 0) { return TT_OK; }
    CHECK(tt_model_save(r->model, r->tokenizer, out_dir));
    r->text.size = 0;
    CHECK(tt_text_format(&r->text, "{\"step\": %d", r->step));
    for (i = 0; i < 2; i++) {
        r->file.size = 0;
        CHECK(describe_file(r->ctx, path_of(out_dir, "%s", beside[i]), &r->file));
        CHECK(tt_text_format(&r->text, ", \"%s\": ", beside[i]));
        CHECK(tt_text_json(&r->text, r->file.data, r->file.size));
    }
    CHECK(tt_text_append(&r->text, "}", 1));
    return tt_optimizer_save(r->optimizer, state_path(), r->text.data, NULL, 0);
}

static tt_status check_beside(run *r, const tt_json *state) {
    int i;
    for (i = 0; i < 2; i++) {
        r->file.size = 0;
        CHECK(describe_file(r->ctx, path_of(out_dir, "%s", beside[i]), &r->file));
        if (strcmp(r->file.data, tt_json_text(state, beside[i], "")) != 0) {
            return tt_fail(r->ctx, TT_ERR_FILE, "%s/%s is not the one that the checkpoint there was made "
                           "with: put that back, or begin without --resume", out_dir, beside[i]);
        }
    }
    return TT_OK;
}

/* Back to the checkpoint. The model in the folder becomes the checkpoint's, whatever was done to it. */
static tt_status load(run *r) {
    tt_json *json;
    tt_status status;
    r->text.size = 0;
    CHECK(tt_optimizer_load(r->optimizer, state_path(), &r->text, NULL, 0));
    json = tt_json_parse(r->ctx, r->text.data, r->text.size);
    status = json ? TT_OK : tt_error_status(r->ctx);
    if (status == TT_OK) { status = state_count(r->ctx, state_path(), json, "step", steps, &r->step); }
    if (status == TT_OK) { status = check_beside(r, json); }
    tt_json_free(r->ctx, json);
    CHECK(status);
    return parallel_rank == 0 ? tt_model_save(r->model, r->tokenizer, out_dir) : TT_OK;
}

/* ---- the program ---- */
/* The text as tokens. */
static tt_status open_text(run *r) {
    static const char without[] = "--out,--resume,--eval-every,--stop-after";
    tt_text settings = TT_INIT;
    tt_status status;
    CHECK(claim_for_rank_0(r->ctx, out_dir));
    CHECK(tt_file_read(r->ctx, data_path, &r->text));
    status = describe_settings(r->ctx, "pretrain", table, N_OPTIONS, without, "--data", &settings);
    if (status == TT_OK) { status = begin_run(r->ctx, out_dir, &settings, state_path(), &resume); }
    tt_text_free(&settings);
    CHECK(status);
    r->tokenizer = resume ? tt_tokenizer_load(r->ctx, path_of(out_dir, "tokenizer.json"))
                          : train_tokenizer(r->ctx, &r->text);
    if (!r->tokenizer) { return tt_error_status(r->ctx); }
    CHECK(tt_encode(r->tokenizer, r->text.data, r->text.size, TT_SPECIAL_TEXT, &r->ids));
    r->n_train = r->ids.size - r->ids.size / 20;
    if (r->ids.size - r->n_train >= (size_t)context) { return TT_OK; }
    return tt_fail(r->ctx, TT_ERR_ARG, "--data %s has %lu tokens, --context %d needs at least %lu",
                   data_path, (unsigned long)r->ids.size, context, 20ul * (unsigned long)context);
}

static tt_status open_model(run *r) {
    tt_model_config config = TT_INIT;
    tt_adamw_desc adamw = TT_INIT;
    config.vocab_size = tt_vocab_size(r->tokenizer);
    config.hidden_size = hidden_size;
    config.num_hidden_layers = n_layers;
    config.num_attention_heads = n_heads;
    config.max_position_embeddings = context;
    config.tie_word_embeddings = 1;
    config.bos_token_id = config.eos_token_id = tt_token_id(r->tokenizer, end_of_text);
    adamw.beta2 = 0.99f;
    adamw.weight_decay = 0.1f;
    adamw.max_grad_norm = 1.0f;
    r->model = tt_model_create(r->ctx, &config, seed);
    r->optimizer = r->model ? tt_adamw_create(r->model, &adamw) : NULL;
    r->reducer = r->optimizer ? parallel_reducer(r->ctx, r->model, gradient_parts) : NULL;
    if (!r->reducer) { return tt_error_status(r->ctx); }
    if (resume) { CHECK(load(r)); }
    say("%s: %lu tokens, vocabulary %d, model of %lu weights, %d threads, %s kernels\n",
        data_path, (unsigned long)r->ids.size, config.vocab_size, (unsigned long)tt_model_size(r->model),
        tt_threads(r->ctx), tt_kernel(r->ctx));
    return TT_OK;
}

/* done steps of this start took so many seconds. */
static void print_step(const run *r, double loss, int done, double seconds) {
    int tokens = batch_tokens / context * context;
    double pace = seconds > 0 ? (double)done * tokens / seconds : 0;
    printf("step %d/%d  loss %.4f  %.0f tokens/s  %s left\n", r->step, steps, loss, pace,
           clock_text(seconds / done * (steps - r->step)));
    fflush(stdout);
}

static tt_status train(run *r) {
    int end = stop_after && stop_after < steps ? stop_after : steps, first = r->step;
    double begin = tt_clock(), loss, held_out;
    if (r->step >= end) {
        say("%s stands at step %d already: there is nothing to do up to step %d\n",
            state_path(), r->step, end);
    }
    while (r->step < end) {
        CHECK(train_step(r, &loss));
        if (r->step % 10 == 0 || r->step == end) { print_step(r, loss, r->step - first, tt_clock() - begin); }
        if (r->step % eval_every != 0 && r->step != end) { continue; }
        CHECK(validate(r, &held_out));
        printf("step %d/%d  validation loss %.4f\n", r->step, steps, held_out);
        if (r->step == end) { CHECK(check_updates(r->ctx, r->skipped)); }
        if (r->skipped == 0) { CHECK(save(r)); }
    }
    return TT_OK;
}

/* What the model makes of the begin of the held-out text. */
static tt_status print_sample(run *r) {
    const int32_t *prompt = r->ids.data + r->n_train;
    tt_request request = TT_INIT;
    tt_sampling sampling = TT_INIT;
    tt_completions out = TT_INIT;
    int length = context / 8;
    tt_status status;
    request.prompt = prompt;
    request.prompt_length = length;
    sampling.max_new_tokens = context - length;
    sampling.temperature = 0.8f;
    sampling.seed = seed;
    r->text.size = 0;
    CHECK(tt_decode(r->tokenizer, prompt, (size_t)length, 1, &r->text));
    CHECK(tt_text_append(&r->text, "|", 1));
    CHECK(tt_generate(r->model, &request, 1, &sampling, &out));
    status = tt_decode(r->tokenizer, out.items[0].tokens, (size_t)out.items[0].length, 1, &r->text);
    tt_completions_free(&out);
    CHECK(status);
    printf("---- held-out prompt | sample\n%s\n----\n", r->text.data);
    return TT_OK;
}

static tt_status pretrain(run *r) {
    CHECK(open_text(r));
    CHECK(open_model(r));
    CHECK(train(r));
    return print_sample(r);
}

static void close_all(run *r) {
    tt_reducer_destroy(r->reducer);
    tt_optimizer_destroy(r->optimizer);
    tt_model_destroy(r->model);
    tt_tokenizer_destroy(r->tokenizer);
    tt_ids_free(&r->ids);
    tt_text_free(&r->text);
    tt_text_free(&r->file);
}

int main(int argc, char **argv) {
    run r = TT_INIT;
    tt_status status;
    parallel_begin(&argc, &argv);
    options_read(argc, argv, "trains a tokenizer and a model on a text file", table, N_OPTIONS);
    r.ctx = program_context("pretrain", NULL);
    r.ids.ctx = r.text.ctx = r.file.ctx = r.ctx;
    status = pretrain(&r);
    close_all(&r);
    if (status == TT_OK) { parallel_end(); }
    return program_end("pretrain", r.ctx, status);
}
