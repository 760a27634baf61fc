/* grade.c - which responses of a JSON-lines file are right, and what was read out of each.
 *
 * Shows: the rewards by answer (chapter 12) without any model. A record is {"answer": text or number, "response": text} and may name
 * its own {"reward": "answer" | "boxed" | "last_number" | "exact"}; other members are left alone.
 *
 *     cc -O2 examples/grade.c -o build/grade -lm                   (or: make examples)
 *     echo '{"answer": 0.75, "response": "so it is 3/4."}' | build/grade
 *     {"line": 1, "reward": 1, "gold": "3/4", "said": "3/4"}
 *
 * One line of JSON per record goes to standard output: gold and said in normal form, in which equal answers are equal texts, or null
 * where no answer was found. The share of right ones goes to standard error. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "options.h"

#define PROGRAM "grade"

static tt_answer_place place_of(const char *name) {
    static const char *const names[] = {"exact", "last_number", "boxed", "answer"};
    static const tt_answer_place places[] = {TT_ANSWER_EXACT, TT_ANSWER_LAST_NUMBER, TT_ANSWER_BOXED, TT_ANSWER_ANY};
    int k;
    for (k = 0; k < 4; k++) {
        if (strcmp(name, names[k]) == 0) return places[k];
    }
    return (tt_answer_place)0;
}

static void print_form(const char *name, const tt_text *form) {
    size_t i;
    if (form->size == 0) {
        printf(", \"%s\": null", name);
        return;
    }
    printf(", \"%s\": \"", name);
    for (i = 0; i < form->size; i++) {
        unsigned char c = (unsigned char)form->data[i];
        if (c < 0x20) printf("\\u%04x", c);
        else if (c == '"' || c == '\\') printf("\\%c", c);
        else putchar(c);
    }
    putchar('"');
}

/* 1 if the response is right. */
static int grade(tt_context *ctx, const char *file, int line, const char *text, size_t size, const char *reward_name) {
    tt_json *record = tt_json_parse(ctx, text, size);
    const tt_json *answer = tt_json_get(record, "answer"), *response = tt_json_get(record, "response"), *named = tt_json_get(record, "reward");
    tt_answer_place place = place_of(reward_name);
    tt_reward_input in = TT_INIT;
    tt_text gold = TT_INIT, said = TT_INIT;
    float reward = 0;
    if (!record) example_exit(1, PROGRAM ": %s line %d: %s", file, line, tt_error(ctx));
    if (!answer || (answer->type != TT_JSON_STRING && answer->type != TT_JSON_NUMBER))
        example_exit(1, PROGRAM ": %s line %d: expected a text or number \"answer\"", file, line);
    if (!response || response->type != TT_JSON_STRING) example_exit(1, PROGRAM ": %s line %d: expected a text \"response\"", file, line);
    if (named) place = place_of(tt_json_text(record, "reward", ""));
    if (!place)
        example_exit(1, PROGRAM ": %s line %d: \"reward\" is \"%s\", expected answer, boxed, last_number or exact", file, line,
                     tt_json_text(record, "reward", "no text"));
    in.question = "";
    in.answer = answer->string;
    in.response = response->string;
    in.response_size = response->length;
    in.stopped = 1;
    gold.ctx = said.ctx = ctx;
    if (tt_answer_grade(place, &in, &reward, &gold, &said) != TT_OK) example_exit(1, PROGRAM ": %s line %d: %s", file, line, tt_error(ctx));
    printf("{\"line\": %d, \"reward\": %d", line, reward > 0.5f);
    print_form("gold", &gold);
    print_form("said", &said);
    printf("}\n");
    tt_text_free(&gold);
    tt_text_free(&said);
    tt_json_free(ctx, record);
    return reward > 0.5f;
}

static void read_all(tt_context *ctx, const char *path, tt_text *text) {
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    char part[65536];
    size_t n;
    if (!file) example_exit(1, PROGRAM ": cannot read %s", path);
    while ((n = fread(part, 1, sizeof part, file)) > 0) {
        if (tt_text_append(text, part, n) != TT_OK) example_exit(1, PROGRAM ": %s", tt_error(ctx));
    }
    if (ferror(file)) example_exit(1, PROGRAM ": cannot read %s", path);
    if (file != stdin) fclose(file);
}

int main(int argc, char **argv) {
    const char *path = argc > 1 && (argv[1][0] != '-' || !argv[1][1]) ? argv[1] : "-", *reward = "answer";
    option table[] = {{"--reward", OPTION_TEXT, &reward, 0, 0, "answer, boxed, last_number or exact, for records that name none"}};
    int skip = argc > 1 && path == argv[1], line = 1, n = 0, right = 0;
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT;
    size_t at, size;
    if (!ctx) example_exit(1, PROGRAM ": out of memory");
    if (skip) argv[1] = argv[0];
    options_read(argc - skip, argv + skip, "[FILE.jsonl] grades responses; without a file, standard input", table, 1);
    if (!place_of(reward)) example_exit(2, PROGRAM ": --reward is \"%s\", expected answer, boxed, last_number or exact", reward);
    text.ctx = ctx;
    read_all(ctx, path, &text);
    for (at = text.size > 2 && memcmp(text.data, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0; at < text.size; at += size + 1, line++) {
        const char *end = (const char *)memchr(text.data + at, '\n', text.size - at);
        size = end ? (size_t)(end - (text.data + at)) : text.size - at;
        if (strspn(text.data + at, " \t\r") >= size) continue;
        right += grade(ctx, path, line, text.data + at, size, reward);
        n++;
    }
    if (n == 0) example_exit(1, PROGRAM ": %s has no records", path);
    fprintf(stderr, "%d of %d right (%.1f %%)\n", right, n, 100.0 * right / n);
    tt_text_free(&text);
    tt_destroy(ctx);
    check_output(PROGRAM);
    return 0;
}
