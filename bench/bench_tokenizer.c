/* Encoding in MB/s on one thread and, in a batch of lines, on all; the longest piece there is; training.
 * bench_tokenizer [TOKENIZER TEXT...]            default: GPT-2, Llama 3 and cl100k of ../shared/data on three texts
 * bench_tokenizer --train TEXT [VOCAB_SIZE]      bench/peers_tokenizer.py takes the same arguments */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(tt_context *ctx, int good) {
    if (good) return;
    fprintf(stderr, "%s\n", tt_error(ctx));
    exit(1);
}
static tt_text read_text(tt_context *ctx, const char *path) {
    tt_text text = TT_INIT;
    text.ctx = ctx;
    check(ctx, tt_file_read(ctx, path, &text) == TT_OK);
    return text;
}

/* Fastest of seven runs; a run is at least 4 MB. */
static double encode_speed(tt_context *ctx, const tt_tokenizer *t, const tt_text *text, size_t *n_ids) {
    size_t repeats = (size_t)4000000 / text->size + 1, i;
    double best = 0;
    tt_ids ids = TT_INIT;
    int run;
    ids.ctx = ctx;
    for (run = 0; run < 7; run++) {
        double begin = tt_clock(), speed;
        for (i = 0; i < repeats; i++) {
            ids.size = 0;
            check(ctx, tt_encode(t, text->data, text->size, TT_SPECIAL_PARSE, &ids) == TT_OK);
        }
        speed = 1e-6 * (double)(repeats * text->size) / (tt_clock() - begin);
        if (speed > best) best = speed;
    }
    *n_ids = ids.size;
    tt_ids_free(&ids);
    return best;
}

/* Lines as texts, 4 MB of them and more. */
static double batch_speed(tt_context *ctx, const tt_tokenizer *t, const tt_text *text) {
    size_t n = 0, capacity = 0, repeats = (size_t)4000000 / text->size + 1, i;
    tt_span *spans = NULL;
    size_t *offsets;
    double best = 0;
    tt_ids ids = TT_INIT;
    int run;
    ids.ctx = ctx;
    for (i = 0; i < repeats; i++) {
        const char *at = text->data, *end = at + text->size;
        while (at < end) {
            const char *line = (const char *)memchr(at, '\n', (size_t)(end - at));
            line = line ? line + 1 : end;
            if (n == capacity) spans = (tt_span *)realloc(spans, (capacity = capacity * 2 + 1024) * sizeof *spans);
            if (!spans) exit(1);
            spans[n].data = at;
            spans[n++].size = (size_t)(line - at);
            at = line;
        }
    }
    offsets = (size_t *)malloc((n + 1) * sizeof *offsets);
    if (!offsets) exit(1);
    for (run = 0; run < 5; run++) {
        double begin = tt_clock(), speed;
        ids.size = 0;
        check(ctx, tt_encode_batch(t, spans, n, TT_SPECIAL_PARSE, &ids, offsets) == TT_OK);
        speed = 1e-6 * (double)(repeats * text->size) / (tt_clock() - begin);
        if (speed > best) best = speed;
    }
    tt_ids_free(&ids);
    free(offsets);
    free(spans);
    return best;
}

static void bench(tt_context *ctx, const char *tokenizer, const char *path) {
    tt_tokenizer *t;
    tt_text text = read_text(ctx, path);
    size_t n;
    double begin = tt_clock(), load, one;
    t = tt_tokenizer_load(ctx, tokenizer);
    check(ctx, t != NULL);
    load = tt_clock() - begin;
    tt_tokenizer_refuse(t, TT_REFUSE_NOTHING);
    one = encode_speed(ctx, t, &text, &n);
    printf("BENCH tokenizer=%s text=%s bytes=%lu ids=%lu encode=%.1f MB/s batch=%.1f MB/s threads=%d load=%.2f s\n", tokenizer, path,
           (unsigned long)text.size, (unsigned long)n, one, batch_speed(ctx, t, &text), tt_threads(ctx), load);
    tt_tokenizer_destroy(t);
    tt_text_free(&text);
}

static void bench_letters(tt_context *ctx, const char *tokenizer) {
    tt_tokenizer *t = tt_tokenizer_load(ctx, tokenizer);
    tt_ids ids = TT_INIT;
    char *letters = (char *)malloc(1000000);
    double begin;
    check(ctx, t != NULL);
    if (!letters) exit(1);
    memset(letters, 'a', 1000000);
    ids.ctx = ctx;
    begin = tt_clock();
    check(ctx, tt_encode(t, letters, 1000000, TT_SPECIAL_PARSE, &ids) == TT_OK);
    printf("BENCH tokenizer=%s text=\"a\" x 1000000 ids=%lu seconds=%.3f\n", tokenizer, (unsigned long)ids.size, tt_clock() - begin);
    tt_ids_free(&ids);
    free(letters);
    tt_tokenizer_destroy(t);
}

typedef struct source { const char *at; size_t left; } source;
static size_t source_read(void *user, char *bytes, size_t n) {
    source *s = (source *)user;
    if (n > s->left) n = s->left;
    memcpy(bytes, s->at, n);
    s->at += n;
    s->left -= n;
    return n;
}
static void bench_train(tt_context *ctx, const char *path, int vocab_size) {
    tt_text text = read_text(ctx, path);
    tt_tokenizer_desc desc = TT_INIT;
    tt_text_source from;
    tt_tokenizer *t;
    source state;
    double begin = tt_clock();
    desc.vocab_size = vocab_size;
    desc.all_bytes = 1;
    state.at = text.data;
    state.left = text.size;
    from.read = source_read;
    from.user = &state;
    t = tt_tokenizer_train(ctx, &desc, from);
    check(ctx, t != NULL);
    printf("BENCH train text=%s bytes=%lu vocab=%d seconds=%.2f peak=%.0f MB\n", path, (unsigned long)text.size, tt_vocab_size(t),
           tt_clock() - begin, 1e-6 * (double)(tt_memory_get(ctx).peak_bytes - text.capacity));
    tt_tokenizer_destroy(t);
    tt_text_free(&text);
}

int main(int argc, char **argv) {
    static const char *const tokenizers[] = {"../shared/data/tokenizers/gpt2/tokenizer.json", "../shared/data/tokenizers/llama3/tokenizer.json",
                                             "../shared/data/tokenizers/tiktoken/cl100k_base.tiktoken"};
    static const char *const texts[] = {"../shared/data/corpora/tinyshakespeare/input.txt", "thinktuning.h", "../shared/data/vectors/multilingual/inputs.json"};
    tt_context *ctx = tt_create(NULL);
    int i, k;
    if (!ctx) return 1;
    if (argc > 2 && strcmp(argv[1], "--train") == 0) {
        bench_train(ctx, argv[2], argc > 3 ? atoi(argv[3]) : 32000);
    } else if (argc > 2) {
        for (i = 2; i < argc; i++) bench(ctx, argv[1], argv[i]);
        bench_letters(ctx, argv[1]);
    } else {
        for (i = 0; i < 3; i++) {
            FILE *file = fopen(tokenizers[i], "rb");
            if (!file) { printf("skip %s: not there\n", tokenizers[i]); continue; }
            fclose(file);
            for (k = 0; k < 3; k++) bench(ctx, tokenizers[i], texts[k]);
            bench_letters(ctx, tokenizers[i]);
        }
    }
    tt_destroy(ctx);
    return 0;
}
