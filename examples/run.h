/* run.h - what programs share that train into a folder: the folder is theirs alone while they run, a run goes
 * on only under the settings it was begun with, updates that fail are said and end it, and what is printed
 * fits the terminal. */
#ifndef RUN_H
#define RUN_H
#include "options.h"
#include "parallel_mpi.h"
#include <sys/stat.h>
#if defined(_WIN32)
#include <io.h>
#define IS_TERMINAL() _isatty(1)
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>
#define IS_TERMINAL() isatty(1)
#endif
#ifndef S_ISDIR
#define S_ISDIR(mode) (((mode) & S_IFMT) == S_IFDIR)
#endif

/* ---- text that fits ---- */
static inline int terminal_width(void) {
    const char *columns = getenv("COLUMNS");
    int width = 0;
#if !defined(_WIN32) && defined(TIOCGWINSZ)
    struct winsize size;
    if (ioctl(1, TIOCGWINSZ, &size) == 0) { width = size.ws_col; }
#endif
    if (width == 0 && columns) { width = atoi(columns); }
    return width >= 20 && width < 10000 ? width : 80;
}

/* Characters of UTF-8. */
static inline int columns_of(const char *text, size_t size) {
    int n = 0;
    size_t i;
    for (i = 0; i < size; i++) { n += (text[i] & 0xC0) != 0x80; }
    return n;
}

/* Broken between words; what a line has too much goes on below, indented. */
static inline void print_wrapped(const char *text, int indent) {
    int width = terminal_width(), column = 0;
    while (*text) {
        size_t gap = strspn(text, " "), word = strcspn(text + gap, " \n");
        int wide = (int)gap + columns_of(text + gap, word);
        if (column > indent && word > 0 && column + wide > width) {
            printf("\n%*s", indent, "");
            column = indent;
            wide -= (int)gap;
            text += gap;
            gap = 0;
        }
        fwrite(text, 1, gap + word, stdout);
        column += wide;
        text += gap + word;
        if (*text != '\n') { continue; }
        putchar(*text++);
        column = 0;
    }
    fflush(stdout);
}

static inline void say(const char *format, ...) {
    char text[2 * PATH_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    print_wrapped(text, 4);
}

/* "head  figure  figure  tail" with as many of the figures, first to last, as fit the width. In figures two
 * spaces stand between them. */
static inline void fit_line(char *out, size_t size, const char *head, const char *figures, const char *tail,
                            int width) {
    int used = columns_of(head, strlen(head)) + 2 + columns_of(tail, strlen(tail));
    int n = snprintf(out, size, "%s", head);
    while (*figures && n > 0 && n < (int)size) {
        const char *end = strstr(figures, "  ");
        size_t length = end ? (size_t)(end - figures) : strlen(figures);
        used += 2 + columns_of(figures, length);
        if (used > width) { break; }
        if (length > 0) { n += snprintf(out + n, size - (size_t)n, "  %.*s", (int)length, figures); }
        figures += length + (end ? 2 : 0);
    }
    if (n > 0 && n < (int)size) { snprintf(out + n, size - (size_t)n, "  %s", tail); }
}

/* ---- the folder ---- */
#if !defined(_WIN32)
/* Of a file that a killed run was writing: tt-0123456789abcdef.tmp. */
static inline int is_temporary(const char *name) {
    if (strlen(name) != 23 || strncmp(name, "tt-", 3) != 0) { return 0; }
    return strspn(name + 3, "0123456789abcdef") == 16 && strcmp(name + 19, ".tmp") == 0;
}

/* What killed runs were writing in a folder and, down to `depth`, in those within, but for folders that are
 * another run's. */
static inline void remove_temporary(const char *folder, int depth) {
    DIR *list = opendir(folder);
    struct dirent *entry;
    char path[PATH_SIZE], lock[PATH_SIZE + 8];
    struct stat info;
    while (list && (entry = readdir(list)) != NULL) {
        int n = snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (n >= (int)sizeof path || lstat(path, &info) != 0) { continue; }
        snprintf(lock, sizeof lock, "%s/lock", path);
        if (S_ISREG(info.st_mode) && is_temporary(entry->d_name)) { remove(path); }
        if (S_ISDIR(info.st_mode) && entry->d_name[0] != '.' && depth > 0 && !tt_file_exists(lock)) {
            remove_temporary(path, depth - 1);
        }
    }
    if (list) { closedir(list); }
}

/* The lock goes with the process, however it ends. */
static inline tt_status lock_folder(tt_context *ctx, const char *out) {
    struct flock lock;
    int file = open(path_of(out, "lock"), O_RDWR | O_CREAT | O_NOFOLLOW, 0666);
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    if (file < 0) { return tt_fail(ctx, TT_ERR_IO, "%s/lock cannot be written: %s", out, strerror(errno)); }
    if (fcntl(file, F_SETLK, &lock) == -1 && (errno == EACCES || errno == EAGAIN)) {
        close(file);
        return tt_fail(ctx, TT_ERR_IO, "another run is writing to %s", out);
    }
    return TT_OK;
}
#endif

/* OUT belongs to one run at a time: two would write each other's files. Whatever would keep the run from
 * writing there is found here, before any work. */
static inline tt_status claim_folder(tt_context *ctx, const char *out) {
    static const char *const names[] = {
        "settings.txt", "model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl"
    };
    struct stat info;
    size_t k;
    if (!*out) { return tt_fail(ctx, TT_ERR_ARG, "--out is empty, expected a folder"); }
    if (strlen(out) > PATH_SIZE - PATH_ROOM) {
        return tt_fail(ctx, TT_ERR_ARG, "--out has %lu bytes, expected at most %d",
                       (unsigned long)strlen(out), PATH_SIZE - PATH_ROOM);
    }
    if (stat(out, &info) == 0 && !S_ISDIR(info.st_mode)) {
        return tt_fail(ctx, TT_ERR_IO, "--out %s is there and no folder", out);
    }
    CHECK(tt_make_dirs(ctx, out));
#if !defined(_WIN32)
    CHECK(lock_folder(ctx, out));
    remove_temporary(out, 2);
#endif
    for (k = 0; k < sizeof names / sizeof *names; k++) {
        CHECK(tt_file_writable(ctx, path_of(out, names[k])));
    }
    return TT_OK;
}

/* The folder is rank 0's; all ranks learn whether it has it. */
static inline tt_status claim_for_rank_0(tt_context *ctx, const char *out) {
    tt_status status = parallel_rank == 0 ? claim_folder(ctx, out) : TT_OK;
    int failed = parallel_any(status != TT_OK);
    return failed && status == TT_OK ? tt_fail(ctx, TT_ERR_IO, "rank 0 cannot have %s", out) : status;
}

/* ---- settings ---- */
/* Is word one of the comma-separated words of list? Its place, or -1. */
static inline int find_word(const char *list, const char *word, size_t size) {
    int place = 0;
    for (; *list; place++) {
        size_t n = strcspn(list, ",");
        if (n == size && memcmp(list, word, n) == 0) { return place; }
        list += n + (list[n] == ',');
    }
    return -1;
}

/* A file counts by what it holds, wherever it stands. */
static inline tt_status describe_file(tt_context *ctx, const char *path, tt_text *out) {
    tt_text bytes = TT_INIT;
    tt_status status;
    bytes.ctx = ctx;
    status = tt_file_read(ctx, path, &bytes);
    if (status == TT_OK) {
        uint64_t hash = tt_hash(bytes.data ? bytes.data : "", bytes.size, 0);
        status = tt_text_format(out, "of %lu bytes, hash %016llx\n",
                                (unsigned long)bytes.size, (unsigned long long)hash);
    }
    tt_text_free(&bytes);
    return status;
}

static inline tt_status describe_option(tt_context *ctx, const option *p, int is_file, tt_text *out) {
    int is_text = p->type == OPTION_TEXT || p->type == OPTION_REQUIRED;
    const char *text = is_text ? *(const char **)p->value : NULL;
    CHECK(tt_text_format(out, "%s ", p->name));
    if (text && is_file) { return describe_file(ctx, text, out); }
    if (is_text) { return tt_text_format(out, "%s\n", text ? text : "-"); }
    switch (p->type) {
    case OPTION_FLOAT: return tt_text_format(out, "%R\n", (double)*(float *)p->value);
    case OPTION_DOUBLE: return tt_text_format(out, "%r\n", *(double *)p->value);
    case OPTION_SEED: return tt_text_format(out, "%llu\n", (unsigned long long)*(uint64_t *)p->value);
    default: return tt_text_format(out, "%d\n", *(int *)p->value);
    }
}

/* All that the results of a program depend on, a line each: its options but for those of the list `without`.
 * files: the options that name a file. */
static inline tt_status describe_settings(tt_context *ctx, const char *program, const option *table, int n,
                                          const char *without, const char *files, tt_text *out) {
    int i;
    out->ctx = ctx;
    CHECK(tt_text_format(out, "%s " TT_VERSION "\n", program));
    for (i = 0; i < n; i++) {
        const char *name = table[i].name;
        if (find_word(without, name, strlen(name)) < 0) {
            CHECK(describe_option(ctx, &table[i], find_word(files, name, strlen(name)) >= 0, out));
        }
    }
    return tt_text_format(out, "arithmetic %s\n", tt_kernel(ctx));
}

/* An error that names the first line in which the settings of the run in OUT differ from those of now. */
static inline tt_status same_settings(tt_context *ctx, const char *out, const char *was, const char *now) {
    while (*was && *now) {
        int m = (int)strcspn(was, "\n"), n = (int)strcspn(now, "\n");
        if (m != n || memcmp(was, now, (size_t)m) != 0) {
            return tt_fail(ctx, TT_ERR_ARG, "the run in %s began with \"%.*s\", this one has \"%.*s\": give "
                           "that again, or another --out", out, m, was, n, now);
        }
        was += m + (was[m] == '\n');
        now += n + (now[n] == '\n');
    }
    if (*was == *now) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_ARG, "the run in %s was begun by another version: give another --out", out);
}

/* To be asked before anything in OUT is touched: *resume becomes 1 if the run there goes on, under the
 * settings it was begun with, and 0 if one begins. made: a file that a run makes; without settings.txt beside
 * it nobody knows whose it is, and it stays. */
static inline tt_status check_settings(tt_context *ctx, const char *out, const tt_text *now, const char *made,
                                       int *resume) {
    tt_text was = TT_INIT;
    tt_status status;
    was.ctx = ctx;
    if (!tt_file_exists(path_of(out, "settings.txt"))) {
        *resume = 0;
        if (!tt_file_exists(made)) { return TT_OK; }
        return tt_fail(ctx, TT_ERR_FILE, "%s is there, but not %s/settings.txt, which says what it was made "
                       "with: move it away, or give another --out", made, out);
    }
    if (!*resume) { return TT_OK; }
    status = tt_file_read(ctx, path_of(out, "settings.txt"), &was);
    if (status == TT_OK) { status = same_settings(ctx, out, was.data ? was.data : "", now->data); }
    tt_text_free(&was);
    return status;
}

/* After what an earlier run left is gone: the new run's settings. */
static inline tt_status write_settings(tt_context *ctx, const char *out, const tt_text *now) {
    return tt_file_write(ctx, path_of(out, "settings.txt"), now->data, now->size);
}

/* Rank 0: *resume becomes 0 where no checkpoint stands; what stands where a run begins is removed. */
static inline tt_status begin_folder(tt_context *ctx, const char *out, const tt_text *now, const char *state,
                                     int *resume) {
    int asked = *resume;
    CHECK(check_settings(ctx, out, now, state, resume));
    if (!tt_file_exists(state)) { *resume = 0; }
    if (*resume) { return TT_OK; }
    if (asked) { say("%s holds no checkpoint to go on from: the run begins\n", out); }
    if (tt_file_exists(state)) {
        say("a run begins anew in %s; the checkpoint there is removed\n", out);
        if (remove(state) != 0) {
            return tt_fail(ctx, TT_ERR_IO, "%s cannot be removed: %s", state, strerror(errno));
        }
    }
    return write_settings(ctx, out, now);
}

/* For a program whose only state is the one file of its checkpoint. Rank 0 looks and writes; *resume is the
 * same on all ranks. */
static inline tt_status begin_run(tt_context *ctx, const char *out, const tt_text *now, const char *state,
                                  int *resume) {
    tt_status status = parallel_rank == 0 ? begin_folder(ctx, out, now, state, resume) : TT_OK;
    int failed = parallel_any(status != TT_OK);
    CHECK(status);
    if (failed) { return tt_fail(ctx, TT_ERR_IO, "rank 0 cannot begin in %s", out); }
    *resume = parallel_any(parallel_rank == 0 && *resume);
    return TT_OK;
}

/* A counter of a run's checkpoint: a whole number in 0..most. */
static inline tt_status state_count(tt_context *ctx, const char *path, const tt_json *state, const char *name,
                                    int most, int *out) {
    const tt_json *node = tt_json_get(state, name);
    const char *said = node && node->type == TT_JSON_NUMBER ? node->string : "no number";
    *out = tt_json_int(state, name, -1);
    if (*out >= 0 && *out <= most) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_FILE, "%s: %s is %.40s, expected a whole number in 0..%d",
                   path, name, said, most);
}

/* ---- updates ---- */
/* After an update; in_row: how many of the last ones were left out because a gradient was not finite. */
static inline tt_status say_skipped(tt_context *ctx, int step, int in_row) {
    if (in_row > 0 && parallel_rank == 0) {
        fprintf(stderr, "step %d: the update is left out, a gradient is not finite (%d in a row)\n",
                step, in_row);
    }
    if (in_row < TT_MAX_SKIPPED) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_NUMBER, "step %d: the last %d updates are left out, their gradients are not "
                   "finite: the run is given up", step, in_row);
}

static inline tt_status take_update(tt_context *ctx, tt_optimizer *optimizer, float lr, int step,
                                    int *in_row) {
    tt_optimizer_stats stats;
    CHECK(tt_optimizer_step(optimizer, lr, &stats));
    *in_row = stats.skipped ? *in_row + 1 : 0;
    return say_skipped(ctx, step, *in_row);
}

/* A run ends well only if its last update was made. */
static inline tt_status check_updates(tt_context *ctx, int in_row) {
    if (in_row == 0) { return TT_OK; }
    return tt_fail(ctx, TT_ERR_NUMBER, "the run ends with %d updates left out, a gradient is not finite; "
                   "nothing is saved", in_row);
}

/* ---- time ---- */
/* Are so many seconds gone since *last? Then it becomes now. A clock that is set back does not keep anybody
 * waiting. */
static inline int is_due(double *last, double seconds) {
    double now = tt_clock();
    if (now >= *last && now - *last < seconds) { return 0; }
    *last = now;
    return 1;
}

/* "1:05", "2:03:04"; valid for the next three calls. */
static inline const char *clock_text(double seconds) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    int s = seconds > 0 && seconds < 3e8 ? (int)(seconds + 0.5) : 0;
    if (s >= 3600) {
        snprintf(text, 32, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    } else {
        snprintf(text, 32, "%d:%02d", s / 60, s % 60);
    }
    return text;
}
#endif
