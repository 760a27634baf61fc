/* tokenize.c - BPE on the command line.
 *
 * Shows: training a tokenizer from a stream, encoding with the three ways to treat special tokens, decoding, and
 * what the pieces of a text are. The file is Hugging Face's tokenizer.json.
 *
 *     cc -O2 examples/tokenize.c -o build/tokenize -lm                   (or: make examples)
 *     build/tokenize train --input input.txt --vocab-size 1024 --special "<|end|>" --out build/tokenizer.json
 *     echo "To be, or not to be" | build/tokenize encode --tokenizer build/tokenizer.json
 *     echo "To be, or not to be" | build/tokenize encode --tokenizer build/tokenizer.json |
 *         build/tokenize decode --tokenizer build/tokenizer.json
 *     build/tokenize inspect --tokenizer build/tokenizer.json input.txt
 *
 * Where text is read, a file may be named; without one, or as "-", it is standard input. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

static const char *const usage =
    "tokenize train   --input FILE --vocab-size N --out FILE [--min-frequency N]\n"
    "                 [--pretokenizer gpt2|whitespace|bytes|smollm2|llama3|qwen2|cl100k|o200k|tekken]\n"
    "                 [--all-bytes] [--special TOKEN]...\n"
    "tokenize encode  --tokenizer FILE_OR_DIR [--special parse|text|refuse] [--no-bos] [--strict] [-0] [FILE]\n"
    "tokenize decode  --tokenizer FILE_OR_DIR [--skip-special] [FILE]\n"
    "tokenize inspect --tokenizer FILE_OR_DIR [--special parse|text|refuse] [FILE]\n"
    "  -0        each record that ends with a NUL byte is a text of its own and gives a line of ids\n"
    "  --no-bos  without the tokens that the tokenizer's file puts around a text (Llama: its BOS)\n"
    "  --strict  text that is no UTF-8, or a byte without a token, is an error; else such a byte is left out,\n"
    "            as Hugging Face does, and reported on standard error\n"
    "The tokenizer is a tokenizer.json, or a folder with one. FILE may be - for standard input;\n"
    "files that are read and written must be regular ones.\n";

typedef struct options {
    const char *command, *input, *out, *tokenizer, *file;
    tt_tokenizer_desc desc;
    const char **specials;         /* of train   */
    tt_special special;            /* of encode  */
    int records, skip_special, no_bos, strict;
} options;

static void stop(int status, const char *format, const char *a, const char *b) {
    fprintf(stderr, "tokenize: ");
    fprintf(stderr, format, a, b);
    fputc('\n', stderr);
    exit(status);
}

static int choice(const char *name, const char *text, const char *const *names, int n) {
    int i;
    for (i = 0; i < n; i++) {
        if (strcmp(text, names[i]) == 0) return i;
    }
    stop(2, "%s is \"%s\", which is not one of its values; see tokenize --help", name, text);
    return 0;
}

static int whole_number(const char *name, const char *text) {
    char *end;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || n < 1 || n > 1000000000) stop(2, "%s is \"%s\", expected a whole number from 1", name, text);
    return (int)n;
}

static void read_options(options *o, int argc, char **argv) {
    static const char *const kinds[] = {"gpt2", "whitespace", "bytes", "smollm2", "llama3", "qwen2", "cl100k", "o200k", "tekken"}, *const ways[] = {"parse", "text", "refuse"};
    static const char *const commands[] = {"train", "encode", "decode", "inspect"};
    int i, train;
    memset(o, 0, sizeof *o);
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        fputs(usage, argc < 2 ? stderr : stdout);
        exit(argc < 2 ? 2 : 0);
    }
    o->command = commands[choice("the command", argv[1], commands, 4)];
    o->specials = (const char **)calloc((size_t)argc, sizeof *o->specials);
    if (!o->specials) stop(1, "out of memory%s%s", "", "");
    o->desc.special_tokens = o->specials;
    train = strcmp(o->command, "train") == 0;
    for (i = 2; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(name, "--no-bos") == 0) { o->no_bos = 1; continue; }
        if (strcmp(name, "--strict") == 0) { o->strict = 1; continue; }
        if (strcmp(name, "-0") == 0) { o->records = 1; continue; }
        if (strcmp(name, "--skip-special") == 0) { o->skip_special = 1; continue; }
        if (train && strcmp(name, "--all-bytes") == 0) { o->desc.all_bytes = 1; continue; }
        if ((name[0] != '-' || name[1] == 0) && !train && !o->file) { o->file = name; continue; }
        if (name[0] != '-') stop(2, "\"%s\" is one argument too many%s", name, "");
        if (!value) stop(2, "%s is unknown or lacks its value%s; see tokenize --help", name, "");
        i++;
        if (strcmp(name, "--tokenizer") == 0) o->tokenizer = value;
        else if (!train && strcmp(name, "--special") == 0) o->special = (tt_special)choice(name, value, ways, 3);
        else if (train && strcmp(name, "--special") == 0) o->specials[o->desc.n_special_tokens++] = value;
        else if (train && strcmp(name, "--input") == 0) o->input = value;
        else if (train && strcmp(name, "--out") == 0) o->out = value;
        else if (train && strcmp(name, "--vocab-size") == 0) o->desc.vocab_size = whole_number(name, value);
        else if (train && strcmp(name, "--min-frequency") == 0) o->desc.min_frequency = whole_number(name, value);
        else if (train && strcmp(name, "--pretokenizer") == 0)
            o->desc.pretokenizer = (tt_pretokenizer)(choice(name, value, kinds, 9) + 1);
        else stop(2, "%s is no option of %s; see tokenize --help", name, o->command);
    }
    if (train && (!o->input || !o->out || !o->desc.vocab_size)) stop(2, "train needs --input, --vocab-size and --out%s%s", "", "");
    if (!train && !o->tokenizer) stop(2, "%s needs --tokenizer%s", o->command, "");
}

static size_t read_chunk(void *user, char *bytes, size_t n) { return fread(bytes, 1, n, (FILE *)user); }

static tt_status train(tt_context *ctx, const options *o) {
    int from_stdin = strcmp(o->input, "-") == 0, bad;
    FILE *file;
    tt_text_source source;
    tt_tokenizer *t;
    tt_status status = tt_file_writable(ctx, o->out);      /* before the work */
    if (status == TT_OK && !from_stdin) status = tt_file_readable(ctx, o->input);
    if (status != TT_OK) return status;
    file = from_stdin ? stdin : fopen(o->input, "rb");
    if (!file) return tt_fail(ctx, TT_ERR_IO, "cannot read %s", o->input);
    source.read = read_chunk;
    source.user = file;
    t = tt_tokenizer_train(ctx, &o->desc, source);
    bad = ferror(file);
    fclose(file);
    if (!t) return tt_error_status(ctx);
    status = bad ? tt_fail(ctx, TT_ERR_IO, "cannot read %s", o->input) : tt_tokenizer_save(t, o->out);
    if (status == TT_OK) fprintf(stderr, "%s: %d tokens\n", o->out, tt_vocab_size(t));
    tt_tokenizer_destroy(t);
    return status;
}

/* All of FILE, or of standard input. */
static tt_status read_all(tt_context *ctx, const char *path, tt_text *out) {
    return path && strcmp(path, "-") != 0 ? tt_file_read(ctx, path, out) : tt_stream_read(ctx, stdin, "standard input", out);
}

static tt_tokenizer *load(tt_context *ctx, const char *path) {
    tt_text name = TT_INIT;
    tt_tokenizer *t = NULL;
    name.ctx = ctx;
    if (!*path) {
        tt_fail(ctx, TT_ERR_ARG, "--tokenizer is empty, expected a file or a folder");
        return NULL;
    }
    if (tt_text_format(&name, "%s/tokenizer.json", path) != TT_OK) return NULL;
    t = tt_tokenizer_load(ctx, tt_file_exists(name.data) ? name.data : path);
    tt_text_free(&name);
    return t;
}

static tt_status to_ids(const tt_tokenizer *t, const options *o, const char *text, size_t size, tt_ids *ids) {
    ids->size = 0;
    return o->no_bos ? tt_encode(t, text, size, o->special, ids) : tt_encode_document(t, text, size, o->special, ids);
}

/* Without --strict, a text with bytes that have no token is said once and encoded without them. */
static tt_status encode_line(tt_context *ctx, tt_tokenizer *t, const options *o, const char *text, size_t size, tt_ids *ids) {
    size_t i;
    tt_status status = to_ids(t, o, text, size, ids);
    if (status == TT_ERR_ARG && !o->strict && strstr(tt_error(ctx), "has no token")) {
        fprintf(stderr, "tokenize: %s; left out\n", tt_error(ctx));
        tt_tokenizer_refuse(t, TT_REFUSE_NOTHING);
        status = to_ids(t, o, text, size, ids);
    }
    if (status != TT_OK) return status;
    for (i = 0; i < ids->size; i++) printf(i ? " %ld" : "%ld", (long)ids->data[i]);
    printf("\n");
    return TT_OK;
}

static tt_status encode(tt_context *ctx, tt_tokenizer *t, const options *o, const tt_text *text, tt_ids *ids) {
    const char *at = text->data, *end = at + text->size;
    tt_status status = TT_OK;
    if (!o->records) return encode_line(ctx, t, o, at, text->size, ids);
    while (at < end && status == TT_OK) {
        const char *nul = (const char *)memchr(at, 0, (size_t)(end - at));
        if (!nul) nul = end;
        status = encode_line(ctx, t, o, at, (size_t)(nul - at), ids);
        at = nul + 1;
    }
    return status;
}

/* What stands at `at`, up to a blank and 20 bytes at most, shown on one line whatever it is. */
static tt_status no_id(tt_context *ctx, const char *at, const char *end, size_t place) {
    char shown[20 * 4 + 1], *to = shown;
    int i;
    for (i = 0; i < 20 && at < end && (i == 0 || !strchr(" \t\r\n,[]", *at)); i++, at++) {
        unsigned char c = (unsigned char)*at;
        to += sprintf(to, c >= 32 && c < 127 ? "%c" : "\\x%02X", c);
    }
    return tt_fail(ctx, TT_ERR_ARG, "\"%s\" at byte %lu is no token id", shown, (unsigned long)place);
}

static tt_status decode(tt_context *ctx, const tt_tokenizer *t, const options *o, const tt_text *text, tt_ids *ids, tt_text *out) {
    const char *at = text->data, *last = at + text->size;
    tt_status status = TT_OK;
    while (status == TT_OK) {
        char *end;
        long id;
        int32_t narrow;
        at += strspn(at, " \t\r\n,[]");
        if (at == last) break;
        id = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || id > 0x7FFFFFFF) return no_id(ctx, at, last, (size_t)(at - text->data));
        narrow = (int32_t)id;
        status = tt_ids_append(ids, &narrow, 1);
        at = end;
    }
    if (status == TT_OK) status = tt_decode(t, ids->data, ids->size, o->skip_special, out);
    if (status == TT_OK) fwrite(out->data, 1, out->size, stdout);
    return status;
}

/* Each token on its own background; a token may be half a character, so bytes that show nothing are written \xNN. */
static tt_status inspect(const tt_tokenizer *t, const options *o, const tt_text *text, tt_ids *ids, tt_text *out) {
    static const int colours[] = {153, 222, 157, 218, 189};
    size_t i, k;
    tt_status status = to_ids(t, o, text->data, text->size, ids);
    for (i = 0; i < ids->size && status == TT_OK; i++) {
        int special = tt_token_is_special(t, ids->data[i]), whole = 1;
        out->size = 0;
        status = tt_decode(t, ids->data + i, 1, 0, out);
        if (status != TT_OK) break;
        for (k = 0; k < out->size; k++) {
            unsigned char c = (unsigned char)out->data[k];
            size_t more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : c >= 0xC0 ? 1 : 0;
            if (c >= 0x80 && c < 0xC0) whole = 0;
            if (k + more >= out->size) whole = 0;
            else k += more;
        }
        printf("\033[30;48;5;%dm", special ? 203 : colours[i % 5]);
        for (k = 0; k < out->size; k++) {
            unsigned char c = (unsigned char)out->data[k];
            if (c == '\n') printf("\\n");
            else if (c < 32 || c == 127 || (c >= 128 && !whole)) printf("\\x%02X", c);
            else putchar(c);
        }
        printf("\033[0m\033[2m%ld\033[0m%s", (long)ids->data[i], strchr(out->data, '\n') ? "\n" : " ");
    }
    if (status == TT_OK) {
        printf("\n%lu bytes, %lu tokens, %.2f bytes per token, vocabulary of %d\n", (unsigned long)text->size, (unsigned long)ids->size,
               ids->size ? (double)text->size / (double)ids->size : 0.0, tt_vocab_size(t));
    }
    return status;
}

static tt_status use(tt_context *ctx, const options *o) {
    tt_text text = TT_INIT, out = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_tokenizer *t = load(ctx, o->tokenizer);
    tt_status status = t ? TT_OK : tt_error_status(ctx);
    text.ctx = out.ctx = ids.ctx = ctx;
    if (status == TT_OK && o->strict) tt_tokenizer_refuse(t, TT_REFUSE_BYTES | TT_REFUSE_UTF8);
    if (status == TT_OK) status = read_all(ctx, o->file, &text);
    if (status == TT_OK) {
        if (o->command[0] == 'e') status = encode(ctx, t, o, &text, &ids);
        else if (o->command[0] == 'd') status = decode(ctx, t, o, &text, &ids, &out);
        else status = inspect(t, o, &text, &ids, &out);
    }
    tt_tokenizer_destroy(t);
    tt_ids_free(&ids);
    tt_text_free(&text);
    tt_text_free(&out);
    return status;
}

int main(int argc, char **argv) {
    options o;
    tt_context *ctx;
    tt_status status;
    program_begin();
    ctx = tt_create(NULL);
    read_options(&o, argc, argv);
    if (!ctx) stop(1, "out of memory%s%s", "", "");
    status = strcmp(o.command, "train") == 0 ? train(ctx, &o) : use(ctx, &o);
    if (status != TT_OK) fprintf(stderr, "tokenize: %s\n", tt_error(ctx));
    tt_destroy(ctx);
    free((void *)o.specials);
    if (status == TT_OK) check_output("tokenize");
    return status == TT_OK ? 0 : 1;
}
