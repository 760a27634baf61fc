/* Tokenizers: encoding in MB/s, the longest piece there is, and training.
 *   build/bench_tokenizer [THREADS [PART]]
 * encode_VOCABULARY_TEXT: one text on one thread; of more threads its lines as a batch. encode_VOCABULARY_letters: a
 * million times "a", seconds. bpe_train_32k: 32,000 tokens from 50 MB, which are the corpora of ../shared/data over and over,
 * kept as build/bench/corpus.txt; memory_bpe_train_32k: of the library, without the text. What is not there is skipped. */
#include "bench.h"

static const char data_dir[] = "../shared/data/";
enum { CORPUS_BYTES = 50 * 1000 * 1000, RUN_BYTES = 4 * 1000 * 1000, LETTERS = 1000 * 1000 };

/* Appends a file of data_dir; 0 if it is not there. */
static int read_data(const char *path, tt_text *text) {
    char whole[256];
    FILE *file;
    snprintf(whole, sizeof whole, "%s%s", data_dir, path);
    file = fopen(whole, "rb");
    if (!file) { return 0; }
    fclose(file);
    bench_check(text->ctx, tt_file_read(text->ctx, whole, text) == TT_OK);
    return 1;
}
static void print_runs(const char *name, const char *unit, int threads, double *values, int n) {
    bench_figure f = TT_INIT;
    f.name = name;
    f.unit = unit;
    f.threads = threads;
    f.ours = bench_stat_of(values, n);
    bench_print(&f);
}

/* ---- encoding ---- */
static double encode_seconds(const tt_tokenizer *t, const tt_text *text, int repeats, tt_ids *ids) {
    double begin = tt_clock();
    int i;
    for (i = 0; i < repeats; i++) {
        ids->size = 0;
        bench_check(ids->ctx, tt_encode(t, text->data, text->size, TT_SPECIAL_PARSE, ids) == TT_OK);
    }
    return tt_clock() - begin;
}
/* The lines of text, `repeats` times over; the caller frees. */
static tt_span *lines_of(const tt_text *text, int repeats, size_t *n) {
    size_t capacity = 1, i;
    tt_span *spans;
    for (i = 0; i < text->size; i++) { capacity += text->data[i] == '\n'; }
    spans = (tt_span *)malloc(capacity * (size_t)repeats * sizeof *spans);
    if (!spans) { exit(1); }
    for (*n = 0; repeats > 0; repeats--) {
        const char *at = text->data, *end = at + text->size;
        while (at < end) {
            const char *line = (const char *)memchr(at, '\n', (size_t)(end - at));
            line = line ? line + 1 : end;
            spans[*n].data = at;
            spans[(*n)++].size = (size_t)(line - at);
            at = line;
        }
    }
    return spans;
}
static void bench_encode(const char *name, const tt_tokenizer *t, const tt_text *text, int n_threads) {
    double seconds[BENCH_MAX_RUNS], total = 0;
    int repeats = (int)(RUN_BYTES / text->size) + 1, n = 0;
    size_t n_lines = 0, *offsets = NULL;
    tt_span *lines = NULL;
    tt_ids ids = TT_INIT;
    bench_stat rate;
    ids.ctx = text->ctx;
    if (n_threads > 1) {
        lines = lines_of(text, repeats, &n_lines);
        offsets = (size_t *)malloc((n_lines + 1) * sizeof *offsets);
        if (!offsets) { exit(1); }
    }
    for (; bench_again(n, total); n++) {
        double begin = tt_clock();
        ids.size = 0;
        if (n_threads > 1) { bench_check(text->ctx, tt_encode_batch(t, lines, n_lines, TT_SPECIAL_PARSE, &ids, offsets) == TT_OK); }
        else { encode_seconds(t, text, repeats, &ids); }
        total += seconds[n] = tt_clock() - begin;
    }
    rate = bench_rate_of(seconds, n, 1e-6 * (double)text->size * repeats);
    seconds[0] = rate.low;
    seconds[1] = rate.median;
    seconds[2] = rate.high;
    print_runs(name, "MB/s", n_threads, seconds, 3);
    tt_ids_free(&ids);
    free(offsets);
    free(lines);
}
static void bench_letters(const char *name, tt_context *ctx, const tt_tokenizer *t) {
    double seconds[3];
    tt_text letters = TT_INIT;
    tt_ids ids = TT_INIT;
    int i;
    ids.ctx = letters.ctx = ctx;
    for (i = 0; i < LETTERS; i += 10) { bench_check(ctx, tt_text_append(&letters, "aaaaaaaaaa", 10) == TT_OK); }
    for (i = 0; i < 3; i++) { seconds[i] = encode_seconds(t, &letters, 1, &ids); }
    print_runs(name, "s", 1, seconds, 3);
    tt_ids_free(&ids);
    tt_text_free(&letters);
}
/* path: of a tokenizer.json. */
static void bench_vocabulary(tt_context *ctx, const char *vocabulary, const char *path) {
    static const char *const texts[][2] = {{"shakespeare", "corpora/tinyshakespeare/input.txt"}, {"multilingual", "vectors/multilingual/inputs.json"}, {"code", NULL}};      /* code: the library's own */
    tt_tokenizer *t = tt_tokenizer_load(ctx, path);
    char name[64];
    int i, n_threads = tt_threads(ctx);
    if (!t) {
        printf("skip encode_%s: %s\n", vocabulary, tt_error(ctx));
        tt_error_clear(ctx);
        return;
    }
    tt_tokenizer_refuse(t, TT_REFUSE_NOTHING);
    for (i = 0; i < 3; i++) {
        tt_text text = TT_INIT;
        text.ctx = ctx;
        snprintf(name, sizeof name, "encode_%s_%s", vocabulary, texts[i][0]);
        if (bench_wants(name) && (texts[i][1] ? read_data(texts[i][1], &text) : tt_file_read(ctx, "thinktuning.h", &text) == TT_OK)) { bench_encode(name, t, &text, n_threads); }
        tt_text_free(&text);
    }
    snprintf(name, sizeof name, "encode_%s_letters", vocabulary);
    if (n_threads == 1 && bench_wants(name)) { bench_letters(name, ctx, t); }
    tt_tokenizer_destroy(t);
}

/* ---- training ---- */
typedef struct source { const char *at; size_t left; } source;
static size_t source_read(void *user, char *bytes, size_t n) {
    source *s = (source *)user;
    if (n > s->left) { n = s->left; }
    memcpy(bytes, s->at, n);
    s->at += n;
    s->left -= n;
    return n;
}
static int corpus(tt_context *ctx, tt_text *out) {
    static const char *const paths[] = {"corpora/tinyshakespeare/input.txt", "corpora/gsm8k/train.jsonl", "corpora/gsm8k/test.jsonl", "corpora/math500/test.jsonl"};
    tt_text once = TT_INIT;
    size_t i;
    once.ctx = out->ctx = ctx;
    for (i = 0; i < sizeof paths / sizeof paths[0]; i++) { read_data(paths[i], &once); }
    while (once.size > 0 && out->size + once.size <= CORPUS_BYTES) { bench_check(ctx, tt_text_append(out, once.data, once.size) == TT_OK); }
    tt_text_free(&once);
    bench_check(ctx, tt_make_dirs(ctx, "build/bench") == TT_OK && (!out->size || tt_file_write(ctx, "build/bench/corpus.txt", out->data, out->size) == TT_OK));
    return out->size > 0;
}
static void bench_train(tt_context *ctx) {
    tt_tokenizer_desc desc = TT_INIT;
    tt_text text = TT_INIT;
    double seconds[3], megabytes;
    int i;
    if (!bench_wants("memory_bpe_train_32k")) { return; }
    if (!corpus(ctx, &text)) {
        printf("skip bpe_train_32k: no %scorpora\n", data_dir);
        return;
    }
    desc.vocab_size = 32000;
    desc.all_bytes = 1;
    for (i = 0; i < 3; i++) {
        double begin = tt_clock();
        source state;
        tt_text_source from;
        tt_tokenizer *t;
        state.at = text.data;
        state.left = text.size;
        from.read = source_read;
        from.user = &state;
        t = tt_tokenizer_train(ctx, &desc, from);
        bench_check(ctx, t != NULL);
        tt_tokenizer_destroy(t);
        seconds[i] = tt_clock() - begin;
    }
    print_runs("bpe_train_32k", "s", 1, seconds, 3);
    megabytes = 1e-6 * ((double)tt_memory_get(ctx).peak_bytes - (double)text.capacity);
    print_runs("memory_bpe_train_32k", "MB", 1, &megabytes, 1);
    tt_text_free(&text);
}

static void run(int n_threads) {
    tt_context *ctx = bench_context(n_threads);
    if (n_threads == 1) { bench_train(ctx); }
    bench_vocabulary(ctx, "gpt2", "../shared/data/tokenizers/gpt2/tokenizer.json");
    bench_vocabulary(ctx, "llama3", "../shared/data/tokenizers/llama3/tokenizer.json");
    bench_vocabulary(ctx, "cl100k", "build/bench/cl100k/tokenizer.json");      /* made by make bench */
    tt_destroy(ctx);
}
int main(int argc, char **argv) { return bench_main(argc, argv, run); }
