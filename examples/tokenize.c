/* tokenize.c - BPE on the command line.
 *
 * Shows: training a tokenizer from a stream, encoding with the three ways to treat special tokens, decoding,
 * and what the pieces of a text are. The file is Hugging Face's tokenizer.json.
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
    "tokenize encode  --tokenizer FILE_OR_DIR [--special parse|text|refuse]\n"
    "                 [--no-bos] [--strict] [-0] [FILE]\n"
    "tokenize decode  --tokenizer FILE_OR_DIR [--skip-special] [FILE]\n"
    "tokenize inspect --tokenizer FILE_OR_DIR [--special parse|text|refuse] [FILE]\n"
    "  -0        each record that ends with a NUL byte is a text of its own and gives a line of ids\n"
    "  --no-bos  without the tokens that the tokenizer's file puts around a text (Llama: its BOS)\n"
    "  --strict  text that is no UTF-8, or a byte without a token, is an error; else such a byte is left\n"
    "            out, as Hugging Face does, and reported on standard error\n"
    "The tokenizer is a tokenizer.json, or a folder with one. FILE may be - for standard input;\n"
    "files that are read and written must be regular ones.\n";

/* ---- options ---- */
/* Commands, a list of special tokens, a file without a name: more than a table of options.h holds. */
typedef struct options {
    const char *command, *input, *out, *tokenizer, *file;
    int is_train;
    tt_tokenizer_desc desc;
    const char **specials;         /* of train   */
    tt_special special;            /* of encode  */
    int records, skip_special, no_bos, strict;
} options;

static int choice(const char *name, const char *text, const char *const *names, int n) {
    int i;
    for (i = 0; i < n; i++) {
        if (strcmp(text, names[i]) == 0) { return i; }
    }
    example_exit(2, "tokenize: %s is \"%s\", which is not one of its values; see tokenize --help",
                 name, text);
    return 0;
}

static int whole_number(const char *name, const char *text) {
    char *end;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || n < 1 || n > 1000000000) {
        example_exit(2, "tokenize: %s is \"%s\", expected a whole number from 1", name, text);
    }
    return (int)n;
}

/* 1 if this is an option without a value, or the file. */
static int read_word(options *o, const char *word) {
    int is_file = (word[0] != '-' || word[1] == 0) && !o->is_train && !o->file;
    int *flag = strcmp(word, "--no-bos") == 0 ? &o->no_bos :
                strcmp(word, "--strict") == 0 ? &o->strict :
                strcmp(word, "-0") == 0 ? &o->records :
                strcmp(word, "--skip-special") == 0 ? &o->skip_special :
                o->is_train && strcmp(word, "--all-bytes") == 0 ? &o->desc.all_bytes : NULL;
    if (flag) { *flag = 1; }
    if (!flag && is_file) { o->file = word; }
    return flag || is_file;
}

static void read_value(options *o, const char *name, const char *value) {
    static const char *const ways[] = {"parse", "text", "refuse"};
    static const char *const kinds[] = {
        "gpt2", "whitespace", "bytes", "smollm2", "llama3", "qwen2", "cl100k", "o200k", "tekken"
    };
    if (strcmp(name, "--tokenizer") == 0) {
        o->tokenizer = value;
    } else if (!o->is_train && strcmp(name, "--special") == 0) {
        o->special = (tt_special)choice(name, value, ways, 3);
    } else if (o->is_train && strcmp(name, "--special") == 0) {
        o->specials[o->desc.n_special_tokens++] = value;
    } else if (o->is_train && strcmp(name, "--input") == 0) {
        o->input = value;
    } else if (o->is_train && strcmp(name, "--out") == 0) {
        o->out = value;
    } else if (o->is_train && strcmp(name, "--vocab-size") == 0) {
        o->desc.vocab_size = whole_number(name, value);
    } else if (o->is_train && strcmp(name, "--min-frequency") == 0) {
        o->desc.min_frequency = whole_number(name, value);
    } else if (o->is_train && strcmp(name, "--pretokenizer") == 0) {
        o->desc.pretokenizer = (tt_pretokenizer)(choice(name, value, kinds, 9) + 1);
    } else {
        example_exit(2, "tokenize: %s is no option of %s; see tokenize --help", name, o->command);
    }
}

static void read_options(options *o, int argc, char **argv) {
    static const char *const commands[] = {"train", "encode", "decode", "inspect"};
    int i;
    memset(o, 0, sizeof *o);
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        fputs(usage, argc < 2 ? stderr : stdout);
        exit(argc < 2 ? 2 : 0);
    }
    o->command = commands[choice("the command", argv[1], commands, 4)];
    o->is_train = strcmp(o->command, "train") == 0;
    o->specials = (const char **)calloc((size_t)argc, sizeof *o->specials);
    if (!o->specials) { example_exit(1, "tokenize: out of memory"); }
    o->desc.special_tokens = o->specials;
    for (i = 2; i < argc; i++) {
        if (read_word(o, argv[i])) { continue; }
        if (argv[i][0] != '-') { example_exit(2, "tokenize: \"%s\" is one argument too many", argv[i]); }
        if (i + 1 == argc) {
            example_exit(2, "tokenize: %s is unknown or lacks its value; see tokenize --help", argv[i]);
        }
        read_value(o, argv[i], argv[i + 1]);
        i++;
    }
    if (o->is_train && (!o->input || !o->out || !o->desc.vocab_size)) {
        example_exit(2, "tokenize: train needs --input, --vocab-size and --out");
    }
    if (!o->is_train && !o->tokenizer) { example_exit(2, "tokenize: %s needs --tokenizer", o->command); }
}

/* ---- the commands ---- */

static size_t read_chunk(void *user, char *bytes, size_t n) { return fread(bytes, 1, n, (FILE *)user); }

static tt_status train(tt_context *ctx, const options *o) {
    int from_stdin = strcmp(o->input, "-") == 0, bad;
    FILE *file;
    tt_text_source source;
    tt_tokenizer *t;
    tt_status status;
    CHECK(tt_file_writable(ctx, o->out));      /* before the work */
    if (!from_stdin) { CHECK(tt_file_readable(ctx, o->input)); }
    file = from_stdin ? stdin : fopen(o->input, "rb");
    if (!file) { return tt_fail(ctx, TT_ERR_IO, "cannot read %s", o->input); }
    source.read = read_chunk;
    source.user = file;
    t = tt_tokenizer_train(ctx, &o->desc, source);
    bad = ferror(file);
    fclose(file);
    if (!t) { return tt_error_status(ctx); }
    status = bad ? tt_fail(ctx, TT_ERR_IO, "cannot read %s", o->input) : tt_tokenizer_save(t, o->out);
    if (status == TT_OK) { fprintf(stderr, "%s: %d tokens\n", o->out, tt_vocab_size(t)); }
    tt_tokenizer_destroy(t);
    return status;
}

/* NULL after an error. */
static tt_tokenizer *load(tt_context *ctx, const char *path) {
    const char *inside;
    if (!*path) {
        tt_fail(ctx, TT_ERR_ARG, "--tokenizer is empty, expected a file or a folder");
        return NULL;
    }
    inside = path_of(path, "tokenizer.json");
    return tt_tokenizer_load(ctx, tt_file_exists(inside) ? inside : path);
}

static tt_status to_ids(const tt_tokenizer *t, const options *o, const char *text, size_t size, tt_ids *ids) {
    ids->size = 0;
    if (o->no_bos) { return tt_encode(t, text, size, o->special, ids); }
    return tt_encode_document(t, text, size, o->special, ids);
}

/* Without --strict, a text with bytes that have no token is said once and encoded without them. */
static tt_status encode_line(tt_context *ctx, tt_tokenizer *t, const options *o, const char *text,
                             size_t size, tt_ids *ids) {
    size_t i;
    tt_status status = to_ids(t, o, text, size, ids);
    if (status == TT_ERR_ARG && !o->strict && strstr(tt_error(ctx), "has no token")) {
        fprintf(stderr, "tokenize: %s; left out\n", tt_error(ctx));
        tt_tokenizer_refuse(t, TT_REFUSE_NOTHING);
        status = to_ids(t, o, text, size, ids);
    }
    CHECK(status);
    for (i = 0; i < ids->size; i++) { printf(i ? " %ld" : "%ld", (long)ids->data[i]); }
    printf("\n");
    return TT_OK;
}

static tt_status encode(tt_context *ctx, tt_tokenizer *t, const options *o, const tt_text *text,
                        tt_ids *ids) {
    const char *at = text->data, *end = at + text->size;
    if (!o->records) { return encode_line(ctx, t, o, at, text->size, ids); }
    while (at < end) {
        const char *nul = (const char *)memchr(at, 0, (size_t)(end - at));
        if (!nul) { nul = end; }
        CHECK(encode_line(ctx, t, o, at, (size_t)(nul - at), ids));
        at = nul + 1;
    }
    return TT_OK;
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

static tt_status decode(tt_context *ctx, const tt_tokenizer *t, const options *o, const tt_text *text,
                        tt_ids *ids, tt_text *out) {
    const char *at = text->data, *last = at + text->size;
    for (;;) {
        char *end;
        long id;
        int32_t narrow;
        at += strspn(at, " \t\r\n,[]");
        if (at == last) { break; }
        id = strtol(at, &end, 10);
        if (*at < '0' || *at > '9' || id > 0x7FFFFFFF) {
            return no_id(ctx, at, last, (size_t)(at - text->data));
        }
        narrow = (int32_t)id;
        CHECK(tt_ids_append(ids, &narrow, 1));
        at = end;
    }
    CHECK(tt_decode(t, ids->data, ids->size, o->skip_special, out));
    fwrite(out->data, 1, out->size, stdout);
    return TT_OK;
}

/* Bytes of the character that begins with c; 0 within one. */
static size_t character_size(unsigned char c) {
    if (c >= 0x80 && c < 0xC0) { return 0; }
    return c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
}

/* Does the token hold whole characters alone? */
static int is_whole(const tt_text *token) {
    size_t k, size;
    for (k = 0; k < token->size; k += size) {
        size = character_size((unsigned char)token->data[k]);
        if (size == 0 || k + size > token->size) { return 0; }
    }
    return 1;
}

/* On the background of this colour; bytes that show nothing are written \xNN. */
static void print_token(const tt_text *token, int32_t id, int colour) {
    int whole = is_whole(token);
    size_t k;
    printf("\033[30;48;5;%dm", colour);
    for (k = 0; k < token->size; k++) {
        unsigned char c = (unsigned char)token->data[k];
        if (c == '\n') {
            printf("\\n");
        } else if (c < 32 || c == 127 || (c >= 128 && !whole)) {
            printf("\\x%02X", c);
        } else {
            putchar(c);
        }
    }
    printf("\033[0m\033[2m%ld\033[0m%s", (long)id, strchr(token->data, '\n') ? "\n" : " ");
}

/* Each token on its own background; a token may be half a character. */
static tt_status inspect(const tt_tokenizer *t, const options *o, const tt_text *text, tt_ids *ids,
                         tt_text *out) {
    enum { SPECIAL = 203 };
    static const int colours[] = {153, 222, 157, 218, 189};
    size_t i;
    CHECK(to_ids(t, o, text->data, text->size, ids));
    for (i = 0; i < ids->size; i++) {
        int special = tt_token_is_special(t, ids->data[i]);
        out->size = 0;
        CHECK(tt_decode(t, ids->data + i, 1, 0, out));
        print_token(out, ids->data[i], special ? SPECIAL : colours[i % 5]);
    }
    printf("\n%lu bytes, %lu tokens, %.2f bytes per token, vocabulary of %d\n",
           (unsigned long)text->size, (unsigned long)ids->size,
           ids->size ? (double)text->size / (double)ids->size : 0.0, tt_vocab_size(t));
    return TT_OK;
}

static tt_status use(tt_context *ctx, const options *o) {
    tt_text text = TT_INIT, out = TT_INIT;
    tt_ids ids = TT_INIT;
    tt_tokenizer *t = load(ctx, o->tokenizer);
    tt_status status = t ? TT_OK : tt_error_status(ctx);
    text.ctx = out.ctx = ids.ctx = ctx;
    if (status == TT_OK && o->strict) { tt_tokenizer_refuse(t, TT_REFUSE_BYTES | TT_REFUSE_UTF8); }
    if (status == TT_OK) { status = read_input(ctx, o->file, &text); }
    if (status == TT_OK) {
        switch (o->command[0]) {
        case 'e': status = encode(ctx, t, o, &text, &ids); break;
        case 'd': status = decode(ctx, t, o, &text, &ids, &out); break;
        default: status = inspect(t, o, &text, &ids, &out); break;
        }
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
    read_options(&o, argc, argv);
    ctx = program_context("tokenize", NULL);
    status = o.is_train ? train(ctx, &o) : use(ctx, &o);
    free((void *)o.specials);
    return program_end("tokenize", ctx, status);
}
