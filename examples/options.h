/* options.h - what every program of the examples begins and ends with; stands behind thinktuning.h. A command
 * line is a table with one row per option, read by options_read. A bad option ends the program with status 2
 * and a line that names the option and its value. Of an option that is given twice the last counts, so that a
 * command can be extended. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <fcntl.h>
#include <unistd.h>
#endif

/* The one error idiom of the programs: what fails ends its function with its status. A function that owns
 * something asks for the status itself and frees it first, or leaves the work to one that owns nothing. */
#define CHECK(call)                                                \
    do {                                                           \
        tt_status check_ = (call);                                 \
        if (check_ != TT_OK) { return check_; }                    \
    } while (0)

/* Prints text to stderr and ends the program. For bad options; what fails later is a tt_status. */
static inline void example_exit(int status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(status);
}

/* Before a program opens anything: the next file would take the place of a standard stream that is closed,
 * and get what is printed. Opened for reading, so that what is written there still fails. */
static inline void program_begin(void) {
#if !defined(_WIN32)
    int fd = 0;
    while (fd >= 0 && fd < 3) { fd = fcntl(fd, F_GETFD) == -1 ? open("/dev/null", O_RDONLY) : fd + 1; }
#endif
#ifdef SIGXFSZ
    /* A file larger than the system's limit is then an error with its name, not the end. */
    signal(SIGXFSZ, SIG_IGN);
#endif
}

/* Whoever reads what is printed must know if a part of it is missing. */
static inline void check_output(const char *program) {
    if (fflush(stdout) != 0 || ferror(stdout)) {
        example_exit(1, "%s: cannot write standard output: %s", program, strerror(errno));
    }
}

static inline tt_context *program_context(const char *program, const tt_desc *desc) {
    tt_context *ctx = tt_create(desc);
    if (!ctx) { example_exit(1, "%s: out of memory", program); }
    return ctx;
}

/* Says what failed; the program's exit status. */
static inline int program_end(const char *program, tt_context *ctx, tt_status status) {
    if (status != TT_OK) { fprintf(stderr, "%s: %s\n", program, tt_error(ctx)); }
    tt_destroy(ctx);
    if (status == TT_OK) { check_output(program); }
    return status == TT_OK ? 0 : 1;
}

/* ---- paths ---- */
/* Bytes of a path with its NUL; those that a program appends to --out. */
enum { PATH_SIZE = 4096, PATH_ROOM = 256 };

/* A path under a folder; valid for the next three calls. */
static inline const char *path_of(const char *folder, const char *format, ...) {
    static char paths[4][PATH_SIZE];
    static int next;
    char *path = paths[next++ % 4];
    int n = snprintf(path, PATH_SIZE, "%s/", folder), m = 0;
    va_list list;
    va_start(list, format);
    if (n > 0 && n < PATH_SIZE) { m = vsnprintf(path + n, (size_t)(PATH_SIZE - n), format, list); }
    va_end(list);
    if (n < 0 || m < 0 || n + m >= PATH_SIZE) {
        example_exit(2, "a path under %.60s... is longer than %d bytes", folder, PATH_SIZE - 1);
    }
    return path;
}

/* All of a file; of standard input for "-" or NULL. */
static inline tt_status read_input(tt_context *ctx, const char *path, tt_text *out) {
    if (path && strcmp(path, "-") != 0) { return tt_file_read(ctx, path, out); }
    return tt_stream_read(ctx, stdin, "standard input", out);
}

/* The model of a folder and the tokenizer beside it. */
static inline tt_status check_vocabulary(const tt_model *model, const tt_tokenizer *tokenizer,
                                         const char *path) {
    int n = tt_vocab_size(tokenizer), room = tt_model_config_get(model)->vocab_size;
    if (n <= room) { return TT_OK; }
    return tt_fail(tt_model_context(model), TT_ERR_FILE,
                   "%s has %d tokens, expected at most the model's vocab_size %d", path, n, room);
}

/* ---- options ---- */
typedef enum option_type {
    OPTION_TEXT = 1, OPTION_REQUIRED, OPTION_INT, OPTION_FLOAT, OPTION_DOUBLE, OPTION_SEED, OPTION_FLAG
} option_type;

typedef struct option {
    const char *name;      /* with its two dashes                                                       */
    option_type type;
    void *value;           /* const char * (TEXT, REQUIRED), int (INT, FLAG), float, double, uint64_t */
    double low, high;      /* legal range of INT, FLOAT and DOUBLE                                      */
    const char *help;
} option;

static inline void options_help(const char *program, const char *about, const option *table, int n) {
    int i;
    printf("%s: %s\n", program, about);
    for (i = 0; i < n; i++) {
        const option *o = &table[i];
        const char *text = o->type == OPTION_TEXT ? *(const char **)o->value : NULL;
        printf("  %-22s %s", o->name, o->help);
        if (o->type == OPTION_REQUIRED) { printf(" (required)"); }
        if (text) { printf(" [%s]", text); }
        if (o->type == OPTION_INT) { printf(" [%d]", *(int *)o->value); }
        if (o->type == OPTION_FLOAT) { printf(" [%g]", (double)*(float *)o->value); }
        if (o->type == OPTION_DOUBLE) { printf(" [%g]", *(double *)o->value); }
        if (o->type == OPTION_SEED) { printf(" [%llu]", (unsigned long long)*(uint64_t *)o->value); }
        printf("\n");
    }
}

/* Whole numbers up to 2^64 - 1, which a double does not hold. */
static inline void option_set_seed(const char *program, const option *o, const char *text) {
    char *end = NULL;
    errno = 0;
    *(uint64_t *)o->value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno) {
        example_exit(2, "%s: %s is \"%s\", expected a whole number from 0 to 18446744073709551615",
                     program, o->name, text);
    }
}

static inline void option_set_number(const char *program, const option *o, const char *text) {
    const char *kind = o->type == OPTION_INT ? "a whole number" : "a number";
    double number;
    size_t read = tt_number_read(text, strlen(text), &number);
    int is_whole = text[strspn(text, "-0123456789")] == 0;
    if (read == 0 || text[read] || !(number >= o->low && number <= o->high) ||
        (o->type == OPTION_INT && !is_whole)) {
        example_exit(2, "%s: %s is \"%s\", expected %s from %g to %g",
                     program, o->name, text, kind, o->low, o->high);
    }
    if (o->type == OPTION_INT) { *(int *)o->value = (int)number; }
    if (o->type == OPTION_FLOAT) { *(float *)o->value = (float)number; }
    if (o->type == OPTION_DOUBLE) { *(double *)o->value = number; }
}

static inline void option_set(const char *program, const option *o, const char *text) {
    switch (o->type) {
    case OPTION_TEXT:
    case OPTION_REQUIRED: *(const char **)o->value = text; break;
    case OPTION_SEED: option_set_seed(program, o, text); break;
    default: option_set_number(program, o, text); break;
    }
}

/* An option that means nothing here, because of the value or the lack of another. */
static inline void option_alone(const char *program, int given, const char *name, const char *why) {
    if (given) { example_exit(2, "%s: %s means nothing %s", program, name, why); }
}

/* The row of an option; the program ends if there is none. */
static inline const option *option_named(const char *program, const option *table, int n, const char *name) {
    int k;
    for (k = 0; k < n; k++) {
        if (strcmp(name, table[k].name) == 0) { return &table[k]; }
    }
    example_exit(2, "%s: unknown option \"%s\"; --help lists them", program, name);
    return NULL;
}

/* Fills the variables that the table points to; --help prints it. */
static inline void options_read(int argc, char **argv, const char *about, const option *table, int n) {
    const char *program = argv[0];
    int i, k;
    program_begin();
    for (i = 1; i < argc; i++) {
        const option *o;
        if (strcmp(argv[i], "--help") == 0) {
            options_help(program, about, table, n);
            check_output(program);
            exit(0);
        }
        o = option_named(program, table, n, argv[i]);
        if (o->type == OPTION_FLAG) {
            *(int *)o->value = 1;
            continue;
        }
        if (i + 1 == argc) { example_exit(2, "%s: %s needs a value", program, argv[i]); }
        option_set(program, o, argv[++i]);
    }
    for (k = 0; k < n; k++) {
        if (table[k].type == OPTION_REQUIRED && !*(const char **)table[k].value) {
            example_exit(2, "%s: %s is required; --help lists all options", program, table[k].name);
        }
    }
}

#endif
