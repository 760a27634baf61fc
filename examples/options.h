/* options.h - command lines for the examples: one table row per option, read by options_read. Stands behind thinktuning.h.
 * A bad option ends the program with status 2 and a line that names the option and its value. Of an option that is given
 * twice the last counts, so that a command can be extended. */
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

typedef enum option_type { OPTION_TEXT = 1, OPTION_REQUIRED, OPTION_INT, OPTION_FLOAT, OPTION_DOUBLE, OPTION_SEED, OPTION_FLAG } option_type;

typedef struct option {
    const char *name;      /* with its two dashes                                                  */
    option_type type;
    void *value;           /* const char * (TEXT, REQUIRED), int (INT, FLAG), float, double, uint64_t (SEED) */
    double low, high;      /* legal range of INT, FLOAT and DOUBLE                                 */
    const char *help;
} option;

/* Prints "program: text" to stderr and ends the program. */
static inline void example_exit(int status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(status);
}

/* Before a program opens anything: the next file would take the place of a standard stream that is closed, and get what is
 * printed. Opened for reading, so that what is written there still fails. */
static inline void program_begin(void) {
#if !defined(_WIN32)
    int fd = 0;
    while (fd >= 0 && fd < 3) fd = fcntl(fd, F_GETFD) == -1 ? open("/dev/null", O_RDONLY) : fd + 1;
#endif
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN);      /* a file larger than the system's limit is then an error with its name, not the end */
#endif
}

/* Whoever reads what is printed must know if a part of it is missing. */
static inline void check_output(const char *program) {
    if (fflush(stdout) != 0 || ferror(stdout)) example_exit(1, "%s: cannot write standard output: %s", program, strerror(errno));
}

static inline void options_help(const char *program, const char *about, const option *table, int n) {
    int i;
    printf("%s: %s\n", program, about);
    for (i = 0; i < n; i++) {
        const option *o = &table[i];
        const char *text = o->type == OPTION_TEXT ? *(const char **)o->value : NULL;
        printf("  %-22s %s", o->name, o->help);
        if (o->type == OPTION_REQUIRED) printf(" (required)");
        if (text) printf(" [%s]", text);
        if (o->type == OPTION_INT) printf(" [%d]", *(int *)o->value);
        if (o->type == OPTION_FLOAT) printf(" [%g]", (double)*(float *)o->value);
        if (o->type == OPTION_DOUBLE) printf(" [%g]", *(double *)o->value);
        if (o->type == OPTION_SEED) printf(" [%llu]", (unsigned long long)*(uint64_t *)o->value);
        printf("\n");
    }
}

static inline void option_set(const char *program, const option *o, const char *text) {
    char *end = NULL;
    double number;
    size_t read;
    errno = 0;
    if (o->type == OPTION_TEXT || o->type == OPTION_REQUIRED) {
        *(const char **)o->value = text;
        return;
    }
    if (o->type == OPTION_SEED) {
        *(uint64_t *)o->value = strtoull(text, &end, 10);
        if (*text < '0' || *text > '9' || *end || errno)
            example_exit(2, "%s: %s is \"%s\", expected a whole number from 0 to 18446744073709551615", program, o->name, text);
        return;
    }
    read = tt_number_read(text, strlen(text), &number);
    if (read == 0 || text[read] || !(number >= o->low && number <= o->high) ||
        (o->type == OPTION_INT && text[strspn(text, "-0123456789")]))
        example_exit(2, "%s: %s is \"%s\", expected %s from %g to %g", program, o->name, text,
                     o->type == OPTION_INT ? "a whole number" : "a number", o->low, o->high);
    if (o->type == OPTION_INT) *(int *)o->value = (int)number;
    else if (o->type == OPTION_DOUBLE) *(double *)o->value = number;
    else *(float *)o->value = (float)number;
}

/* An option that means nothing here, because of the value or the lack of another. */
static inline void option_alone(const char *program, int given, const char *name, const char *why) {
    if (given) example_exit(2, "%s: %s means nothing %s", program, name, why);
}

/* Fills the variables that the table points to; --help prints it. */
static inline void options_read(int argc, char **argv, const char *about, const option *table, int n) {
    const char *program = argv[0];
    int i, k;
    program_begin();
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            options_help(program, about, table, n);
            check_output(program);
            exit(0);
        }
        for (k = 0; k < n && strcmp(argv[i], table[k].name) != 0; k++) {}
        if (k == n) example_exit(2, "%s: unknown option \"%s\"; --help lists them", program, argv[i]);
        if (table[k].type == OPTION_FLAG) {
            *(int *)table[k].value = 1;
            continue;
        }
        if (i + 1 == argc) example_exit(2, "%s: %s needs a value", program, argv[i]);
        option_set(program, &table[k], argv[++i]);
    }
    for (k = 0; k < n; k++)
        if (table[k].type == OPTION_REQUIRED && !*(const char **)table[k].value)
            example_exit(2, "%s: %s is required; --help lists all options", program, table[k].name);
}

#endif
