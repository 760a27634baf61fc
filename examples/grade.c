/* grade.c - which responses of a JSON-lines file are right, and what was read out of each.
 *
 * Shows: the rewards by answer (rewards.h) without any model. A record is {"answer": text or number,
 * "response": text} and may name its own {"reward": "answer" | "boxed" | "last_number" | "exact"}; other
 * members are left alone.
 *
 *     cc -O2 examples/grade.c -o build/grade -lm                   (or: make examples)
 *     echo '{"answer": 0.75, "response": "so it is 3/4."}' | build/grade
 *     {"line": 1, "reward": 1, "gold": "3/4", "said": "3/4"}
 *
 * One line of JSON per record goes to standard output: gold and said in normal form, in which equal answers
 * are equal texts, or null where no answer was found. The share of right ones goes to standard error. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "rewards.h"
#include "options.h"

#define EXPECTED_REWARD "expected answer, boxed, last_number or exact"

/* A reward by its name; 0 if it is none. */
static tt_answer_place place_of(const char *name) {
    static const struct { const char *name; tt_answer_place place; } rewards[] = {
        {"exact", TT_ANSWER_EXACT},
        {"last_number", TT_ANSWER_LAST_NUMBER},
        {"boxed", TT_ANSWER_BOXED},
        {"answer", TT_ANSWER_ANY},
    };
    int k;
    for (k = 0; k < 4; k++) {
        if (strcmp(name, rewards[k].name) == 0) { return rewards[k].place; }
    }
    return (tt_answer_place)0;
}

/* Of the file's records; texts are room for the one at hand. */
typedef struct grader {
    tt_context *ctx;
    const char *path;
    tt_answer_place place;        /* of records that name none */
    int line, n, n_right;
    tt_text gold, said, json;
} grader;

static tt_status bad_record(const grader *g, const char *what) {
    char why[1024];
    snprintf(why, sizeof why, "%s", what);      /* which may be the error that this one takes the place of */
    return tt_fail(g->ctx, TT_ERR_FILE, "%s line %d: %s", g->path, g->line, why);
}

static tt_status write_form(tt_text *json, const char *name, const tt_text *form) {
    CHECK(tt_text_format(json, ", \"%s\": ", name));
    if (form->size == 0) { return tt_text_append(json, "null", 4); }
    return tt_text_json(json, form->data, form->size);
}

static tt_status grade_record(grader *g, const tt_json *record) {
    const tt_json *answer = tt_json_get(record, "answer"), *response = tt_json_get(record, "response");
    tt_answer_place place = g->place;
    tt_reward_input in = TT_INIT;
    float reward = 0;
    if (!answer || (answer->type != TT_JSON_STRING && answer->type != TT_JSON_NUMBER)) {
        return bad_record(g, "expected a text or number \"answer\"");
    }
    if (!response || response->type != TT_JSON_STRING) {
        return bad_record(g, "expected a text \"response\"");
    }
    if (tt_json_get(record, "reward")) { place = place_of(tt_json_text(record, "reward", "")); }
    if (!place) {
        return tt_fail(g->ctx, TT_ERR_FILE, "%s line %d: \"reward\" is \"%s\", " EXPECTED_REWARD,
                       g->path, g->line, tt_json_text(record, "reward", "no text"));
    }
    in.question = "";
    in.answer = answer->string;
    in.response = response->string;
    in.response_size = response->length;
    in.stopped = 1;
    g->gold.size = g->said.size = g->json.size = 0;
    if (tt_answer_grade(place, &in, &reward, &g->gold, &g->said) != TT_OK) {
        return bad_record(g, tt_error(g->ctx));
    }
    CHECK(tt_text_format(&g->json, "{\"line\": %d, \"reward\": %d", g->line, reward > 0.5f));
    CHECK(write_form(&g->json, "gold", &g->gold));
    CHECK(write_form(&g->json, "said", &g->said));
    printf("%s}\n", g->json.data);
    g->n++;
    g->n_right += reward > 0.5f;
    return TT_OK;
}

static tt_status grade_line(grader *g, const char *text, size_t size) {
    tt_json *record = tt_json_parse(g->ctx, text, size);
    tt_status status = record ? grade_record(g, record) : bad_record(g, tt_error(g->ctx));
    tt_json_free(g->ctx, record);
    return status;
}

/* Lines that are not blank, behind the byte order mark that some editors write. */
static tt_status grade_all(grader *g, const tt_text *text) {
    static const char mark[] = "\xEF\xBB\xBF";
    size_t at = text->size > 2 && memcmp(text->data, mark, 3) == 0 ? 3 : 0, size;
    for (g->line = 1; at < text->size; at += size + 1, g->line++) {
        const char *line = text->data + at, *end = (const char *)memchr(line, '\n', text->size - at);
        size = end ? (size_t)(end - line) : text->size - at;
        if (strspn(line, " \t\r") < size) { CHECK(grade_line(g, line, size)); }
    }
    if (g->n == 0) { return tt_fail(g->ctx, TT_ERR_FILE, "%s has no records", g->path); }
    fprintf(stderr, "%d of %d right (%.1f %%)\n", g->n_right, g->n, 100.0 * g->n_right / g->n);
    return TT_OK;
}

int main(int argc, char **argv) {
    static const char about[] = "[FILE.jsonl] grades responses; without a file, standard input";
    const char *reward = "answer";
    const option table[] = {{"--reward", OPTION_TEXT, &reward, 0, 0,
                             "answer, boxed, last_number or exact, for records that name none"}};
    int has_path = argc > 1 && (argv[1][0] != '-' || !argv[1][1]);
    grader g = TT_INIT;
    tt_text text = TT_INIT;
    tt_status status;
    g.path = has_path ? argv[1] : "-";
    if (has_path) { argv[1] = argv[0]; }
    options_read(argc - has_path, argv + has_path, about, table, 1);
    g.place = place_of(reward);
    if (!g.place) { example_exit(2, "grade: --reward is \"%s\", " EXPECTED_REWARD, reward); }
    g.ctx = program_context("grade", NULL);
    g.gold.ctx = g.said.ctx = g.json.ctx = text.ctx = g.ctx;
    status = read_input(g.ctx, g.path, &text);
    if (status == TT_OK) { status = grade_all(&g, &text); }
    tt_text_free(&text);
    tt_text_free(&g.gold);
    tt_text_free(&g.said);
    tt_text_free(&g.json);
    return program_end("grade", g.ctx, status);
}
