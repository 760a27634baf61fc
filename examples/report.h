/* report.h - the second half of thinktune.c: keeps the first seed's rollouts while it trains; then reads
 * result.json, metrics.jsonl and rollouts.jsonl back and writes summary.json, curves.svg and report.html.
 * Everything comes from those files, so that a resumed run and a whole one write the same. Stands on
 * experiment.h. */

#include "page.h"

/* ---- rollouts of the first seed: of each step one line, the whole group of the first question ---- */
static const char *rollouts_path(const app *a, const char *method) {
    return path_of(a->o.out, "seed-%d/%s/rollouts.jsonl", a->o.first_seed, method);
}

/* Bytes of the character at this place; 0 where there is no UTF-8, as where a response is cut inside a
 * character. */
static size_t character_length(const unsigned char *at, size_t left) {
    size_t n = at[0] < 0x80   ? 1
               : at[0] < 0xC2 ? 0
               : at[0] < 0xE0 ? 2
               : at[0] < 0xF0 ? 3
               : at[0] < 0xF5 ? 4
                              : 0,
           i;
    if (n > left) { return 0; }
    for (i = 1; i < n; i++) {
        if ((at[i] & 0xC0) != 0x80) { return 0; }
    }
    if (n == 3 && (at[0] == 0xE0 ? at[1] < 0xA0 : at[0] == 0xED && at[1] > 0x9F)) { return 0; }
    if (n == 4 && (at[0] == 0xF0 ? at[1] < 0x90 : at[0] == 0xF4 && at[1] > 0x8F)) { return 0; }
    return n;
}

/* As JSON, which is UTF-8; other bytes become U+FFFD. */
static tt_status write_text(tt_text *line, const tt_text *text) {
    tt_text clean = TT_INIT;
    tt_status status = TT_OK;
    size_t i = 0;
    clean.ctx = line->ctx;
    while (i < text->size && status == TT_OK) {
        size_t n = character_length((const unsigned char *)text->data + i, text->size - i);
        status = n ? tt_text_append(&clean, text->data + i, n) : tt_text_append(&clean, "\xEF\xBF\xBD", 3);
        i += n ? n : 1;
    }
    if (status == TT_OK) { status = tt_text_json(line, clean.data ? clean.data : "", clean.size); }
    tt_text_free(&clean);
    return status;
}

static tt_status write_tokens(app *a, tt_text *line, const char *key, const int32_t *tokens, int n) {
    tt_text text = new_text(a);
    tt_status status = tt_decode(a->tokenizer, tokens, (size_t)n, 1, &text);
    if (status == TT_OK) { status = tt_text_format(line, ",\"%s\":", key); }
    if (status == TT_OK) { status = write_text(line, &text); }
    tt_text_free(&text);
    return status;
}

static tt_status write_rollout(app *a, tt_text *line, const tt_rollout *r) {
    const int32_t *response = r->tokens + r->prompt_length;
    int own = r->guided ? r->attempt_length : r->response_length;
    CHECK(tt_text_format(line, "%s{\"reward\":%r,\"advantage\":%r,\"stopped\":%d", r->sample ? "," : "",
                         (double)r->reward, (double)r->advantage, r->stopped));
    CHECK(write_tokens(a, line, "student", response, own));
    if (r->guided) { CHECK(write_tokens(a, line, "teacher", response + own, r->response_length - own)); }
    return tt_text_append(line, "}", 1);
}

static tt_status write_group(app *a, tt_text *line, const tt_rollouts *all, int step) {
    const tt_rollout *r = all->items;
    int i;
    CHECK(tt_text_format(line, "{\"step\":%d", step));
    CHECK(write_tokens(a, line, "question", r->tokens, r->prompt_length));
    CHECK(tt_text_format(line, ",\"rollouts\":["));
    for (i = 0; i < all->n && r[i].group == 0; i++) { CHECK(write_rollout(a, line, &r[i])); }
    return tt_text_append(line, "]}\n", 3);
}

/* app.on_step: the file is cut back to the steps before this one, as an interrupted run may have left it
 * longer. */
static tt_status record_rollouts(app *a, const char *method, const tt_trainer *trainer) {
    tt_text line = new_text(a);
    FILE *file = NULL;
    int step = tt_trainer_step_count(trainer) - 1;
    tt_status status;
    if (a->seed != a->o.first_seed) { return TT_OK; }
    status = write_group(a, &line, tt_trainer_rollouts(trainer), step);
    if (status == TT_OK) { status = open_metrics(a, rollouts_path(a, method), step, &file); }
    if (status == TT_OK && (fwrite(line.data, 1, line.size, file) != line.size || fflush(file) != 0)) {
        status =
            tt_fail(a->ctx, TT_ERR_IO, "%s cannot be written: %s", rollouts_path(a, method), strerror(errno));
    }
    if (file) { fclose(file); }
    tt_text_free(&line);
    return status;
}

/* ---- results ---- */
enum { OWN_REWARD, REFLECTION, LENGTH, ENTROPY, KL, GRAD_NORM, N_PLOTS, TOKENS = N_PLOTS, N_CURVES };
typedef struct curve {
    const char *key, *title, *meaning;
} curve;
static const curve curves[N_CURVES] = {
    {"think/own_reward", "own reward (1 = right)",
     "Mean reward of the student's own responses, without those that the teacher continued."},
    {"think/reflection_rate", "reflection (share of responses)",
     "Share of the student's own responses that look at their answer again."},
    {"completions/mean_length", "length (tokens)",
     "Mean tokens of the student's own responses, end token included."},
    {"entropy", "entropy (nats per token)",
     "How open the choice of the next token still is, over all tokens of the update, the teacher's included: "
     "0 is certainty, and the end of learning."},
    {"kl", "KL to the base (nats per token)",
     "How far the student's distribution has moved from the base's: the k3 estimate over all tokens of the "
     "update, without --beta at most 10 a token."},
    {"grad_norm", "gradient norm (before clipping)",
     "Length of the update's gradient. Peaks are steps that would have gone far; clipping shortens them."},
    {"num_tokens", NULL, NULL}};
typedef struct results {
    int n_seeds, n_methods, n_steps;
    const char *methods[MAX_ARMS + 1];
    char sampled[32];                     /* heading of the accuracy that is sampled        */
    tt_json *of[MAX_ARMS + 1][MAX_SEEDS]; /* result.json                                    */
    double *values;                       /* [curve][method][seed][step] of metrics.jsonl   */
} results;

static size_t n_places(const results *r) {
    return (size_t)r->n_methods * (size_t)r->n_seeds * (size_t)r->n_steps;
}

static double *value_at(const results *r, int c, int method, int seed, int step) {
    size_t row = ((size_t)c * (size_t)r->n_methods + (size_t)method) * (size_t)r->n_seeds + (size_t)seed;
    return r->values + row * (size_t)r->n_steps + (size_t)step;
}

static void free_results(app *a, results *r) {
    int m, s;
    for (m = 0; m < r->n_methods; m++) {
        for (s = 0; s < r->n_seeds; s++) { tt_json_free(a->ctx, r->of[m][s]); }
    }
    tt_free(a->ctx, r->values, N_CURVES * n_places(r), sizeof(double));
}

static void read_curve_line(app *a, results *r, const tt_json *json) {
    int m, c, seed = (int)tt_json_number(json, "seed", -1) - a->o.first_seed;
    int step = (int)tt_json_number(json, "step", -1);
    for (m = 0; m < r->n_methods && strcmp(r->methods[m], tt_json_text(json, "method", "")) != 0; m++) { }
    if (m == r->n_methods || seed < 0 || seed >= r->n_seeds || step < 0 || step >= r->n_steps) { return; }
    for (c = 0; c < N_CURVES; c++) {
        *value_at(r, c, m, seed, step) = tt_json_number(json, curves[c].key, 0);
    }
}

/* Does any method write steps? */
static int trains(const results *r) {
    int m = 0;
    while (m < r->n_methods && !has_steps(r->methods[m])) { m++; }
    return m < r->n_methods;
}

static tt_status read_curves(app *a, results *r) {
    tt_json_lines lines = TT_INIT;
    tt_json *json;
    tt_status status;
    if (!trains(r)) { return TT_OK; }
    lines.ctx = a->ctx;
    status = tt_json_lines_open(&lines, path_of(a->o.out, "metrics.jsonl"));
    while (status == TT_OK && (status = tt_json_lines_next(&lines, &json)) == TT_OK && json) {
        read_curve_line(a, r, json);
        tt_json_free(a->ctx, json);
    }
    tt_json_lines_close(&lines);
    return status;
}

static tt_status read_results(app *a, results *r) {
    int m, s;
    memset(r, 0, sizeof *r);
    r->n_seeds = a->o.seeds;
    r->n_steps = a->o.steps;
    r->n_methods = a->n_arms + 1;
    r->methods[0] = "base";
    snprintf(r->sampled, sizeof r->sampled, "accuracy T=%g", a->o.temperature);
    for (m = 1; m < r->n_methods; m++) { r->methods[m] = a->arms[m - 1]; }
    r->values = (double *)tt_alloc(a->ctx, N_CURVES * n_places(r), sizeof(double));
    if (!r->values) { return TT_ERR_MEM; }
    for (m = 0; m < r->n_methods; m++) {
        for (s = 0; s < r->n_seeds; s++) {
            CHECK(read_json(a, result_path(a, a->o.first_seed + s, r->methods[m]), &r->of[m][s]));
        }
    }
    return read_curves(a, r);
}

/* The rows of every table: name in summary.json, heading, and where the figure stands in result.json. */
typedef struct figure {
    const char *name, *heading, *part, *key;
} figure;
enum { ACCURACY = 0, MEAN_LENGTH = 8, N_FIGURES = 11 };
static const figure figures[N_FIGURES] = {
    {"sampled_accuracy", NULL, "sampled", "accuracy"},
    {"greedy_accuracy", "greedy", "greedy", "accuracy"},
    {"attempt_rate", "attempts", "sampled", "attempt_rate"},
    {"first_accuracy", "first try", "sampled", "first_accuracy"},
    {"works_first", "works first", "sampled", "works_first"},
    {"reflection_rate", "reflection", "sampled", "reflection_rate"},
    {"correction_rate", "correction", "sampled", "correction_rate"},
    {"spoil_rate", "spoil", "sampled", "spoil_rate"},
    {"mean_length", "length", "sampled", "mean_length"},
    {"shift_accuracy", "shift", "shift", "accuracy"},
    {"shift_greedy_accuracy", "shift, greedy", "shift_greedy", "accuracy"}
};

/* Only with --shift are there questions out of domain. */
static int has_figure(const results *r, int f) { return tt_json_get(r->of[0][0], figures[f].part) != NULL; }

static const char *heading_of(const results *r, int f) {
    return f == ACCURACY ? r->sampled : figures[f].heading;
}

static double figure_of(const results *r, int method, int seed, int f) {
    return tt_json_number(tt_json_get(r->of[method][seed], figures[f].part), figures[f].key, 0);
}

static void mean_sd(const results *r, int method, int f, double *mean, double *sd) {
    double sum = 0, squares = 0;
    int s;
    for (s = 0; s < r->n_seeds; s++) { sum += figure_of(r, method, s, f); }
    *mean = sum / r->n_seeds;
    for (s = 0; s < r->n_seeds; s++) { squares += pow(figure_of(r, method, s, f) - *mean, 2); }
    *sd = r->n_seeds > 1 ? sqrt(squares / (r->n_seeds - 1)) : 0;
}

/* "0.760 +- 0.081", or "0.760" of one seed */
static const char *cell(const results *r, int method, int f, const char *sign, char *out, size_t size) {
    double mean, sd;
    int digits = f == MEAN_LENGTH ? 1 : 3;
    mean_sd(r, method, f, &mean, &sd);
    if (r->n_seeds > 1) {
        snprintf(out, size, "%.*f%s%.*f", digits, mean, sign, digits, sd);
    } else {
        snprintf(out, size, "%.*f", digits, mean);
    }
    return out;
}

static double sampled_tokens(const results *r, int method) {
    double sum = 0;
    int s;
    for (s = 0; s < r->n_seeds; s++) {
        double steps = *value_at(r, TOKENS, method, s, r->n_steps - 1);
        sum += steps + tt_json_number(r->of[method][s], "num_tokens", 0);
    }
    return sum / r->n_seeds;
}

/* ---- summary.json ---- */
static tt_status write_figure(tt_text *t, const results *r, int m, int f) {
    double mean, sd;
    int s;
    mean_sd(r, m, f, &mean, &sd);
    CHECK(tt_text_format(t, ",\n  \"%s\":{\"mean\":%r,\"sd\":%r,\"values\":[", figures[f].name, mean, sd));
    for (s = 0; s < r->n_seeds; s++) {
        CHECK(tt_text_format(t, "%s%r", s ? "," : "", figure_of(r, m, s, f)));
    }
    return tt_text_append(t, "]}", 2);
}

static tt_status write_gate_of(tt_text *t, const results *r, int s, int seed) {
    static const char *const keys[] = {
        "teacher_hit", "rescue_rate", "spoil_rate", "said", "coherence", "leak", "leak_max"
    };
    const tt_json *measured = tt_json_get(r->of[0][s], "gate");
    size_t k;
    CHECK(tt_text_format(t, "%s\n  {\"seed\":%d", s ? "," : "", seed));
    for (k = 0; k < sizeof keys / sizeof *keys; k++) {
        CHECK(tt_text_format(t, ",\"%s\":%r", keys[k], tt_json_number(measured, keys[k], 0)));
    }
    return tt_text_append(t, "}", 1);
}

static tt_status build_summary(app *a, const results *r, tt_text *t) {
    int m, f, s;
    CHECK(tt_text_format(t, "{\"task\":\"%s\",\"seeds\":[", a->task.name));
    for (s = 0; s < r->n_seeds; s++) { CHECK(tt_text_format(t, "%s%d", s ? "," : "", a->o.first_seed + s)); }
    CHECK(tt_text_format(t, "],\"steps\":%d,\"methods\":{", r->n_steps));
    for (m = 0; m < r->n_methods; m++) {
        CHECK(tt_text_format(t, "%s\n\"%s\":{\"num_tokens\":%r", m ? "," : "", r->methods[m],
                             sampled_tokens(r, m)));
        for (f = 0; f < N_FIGURES && has_figure(r, f); f++) { CHECK(write_figure(t, r, m, f)); }
        CHECK(tt_text_append(t, "}", 1));
    }
    CHECK(tt_text_format(t, "},\n\"gate\":["));
    for (s = 0; s < r->n_seeds; s++) { CHECK(write_gate_of(t, r, s, a->o.first_seed + s)); }
    return tt_text_format(t, "]}\n");
}

static tt_status write_summary(app *a, const results *r) {
    tt_text t = new_text(a);
    tt_status status = build_summary(a, r, &t);
    if (status == TT_OK) {
        status = tt_file_write(a->ctx, path_of(a->o.out, "summary.json"), t.data, t.size);
    }
    tt_text_free(&t);
    return status;
}

/* ---- plots ---- */
/* Mean over seeds first .. last and over the five steps around this one. */
static double curve_at(const results *r, int c, int method, int first, int last, int step) {
    double sum = 0;
    int s, k, n = 0;
    for (s = first; s <= last; s++) {
        for (k = step - 2; k <= step + 2; k++) {
            if (k < 0 || k >= r->n_steps) { continue; }
            sum += *value_at(r, c, method, s, k);
            n++;
        }
    }
    return sum / n;
}

static double highest(const results *r, int c) {
    double most = 0;
    int m, s, k;
    for (m = 1; m < r->n_methods; m++) {
        for (s = 0; s < r->n_seeds; s++) {
            for (k = 0; k < r->n_steps; k++) { most = fmax(most, curve_at(r, c, m, s, s, k)); }
        }
    }
    return most;
}

/* The class of a method's colour and dashes: its own name, or one of those that the page has for others. */
static const char *class_of(const results *r, int method) {
    static const char *const known[] = {"base", "grpo", "thinktune", "formula", "luffy", "off"};
    static const char *const others[] = {"k3", "k4", "k5", "k6", "k7", "k2"};
    size_t i;
    for (i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i], r->methods[method]) == 0) { return known[i]; }
    }
    return others[method % 6];
}

static tt_status draw_line(tt_text *t, const plot *p, const results *r, int c, int method, int first,
                           int last) {
    int step, whole = last > first || r->n_seeds == 1;
    CHECK(tt_text_format(t, "<polyline class=\"line %s %s\" points=\"", whole ? "" : "seed",
                         class_of(r, method)));
    for (step = 0; step < r->n_steps; step++) {
        CHECK(tt_text_format(t, "%.1f,%.1f ", plot_x(p, step),
                             plot_y(p, curve_at(r, c, method, first, last, step))));
    }
    return tt_text_format(t, "\"/>\n");
}

static tt_status draw_plot(tt_text *t, const results *r, int c) {
    plot p = TT_INIT;
    double most = highest(r, c);
    int m, s, n = 0;
    p.title = curves[c].title;
    p.x_label = r->n_seeds > 1 ? "RL step (mean of 5; thin: single seeds)" : "RL step (mean of 5)";
    p.x_high = r->n_steps > 1 ? r->n_steps - 1 : 1;
    p.y_high = c == OWN_REWARD || c == REFLECTION ? fmax(1, most) : most > 0 ? most * 1.05 : 1;
    CHECK(plot_axes(t, &p));
    for (m = 1; m < r->n_methods; m++) {
        if (!has_steps(r->methods[m])) { continue; }
        for (s = 0; s < r->n_seeds && r->n_seeds > 1; s++) { CHECK(draw_line(t, &p, r, c, m, s, s)); }
        CHECK(draw_line(t, &p, r, c, m, 0, r->n_seeds - 1));
        CHECK(plot_legend(t, n++, 3, class_of(r, m), r->methods[m]));
    }
    return TT_OK;
}

/* What the picture says, in words: where each method begins and ends. */
static tt_status describe_plot(tt_text *t, const results *r, int c) {
    int m, last = r->n_seeds - 1;
    CHECK(tt_text_format(t, "%s over %d RL steps", curves[c].title, r->n_steps));
    for (m = 1; m < r->n_methods; m++) {
        if (!has_steps(r->methods[m])) { continue; }
        CHECK(tt_text_format(t, "; %s from %.3g to %.3g", r->methods[m], curve_at(r, c, m, 0, last, 0),
                             curve_at(r, c, m, 0, last, r->n_steps - 1)));
    }
    return TT_OK;
}

/* Plots c, c + 1, ... side by side as one picture. */
static tt_status draw_plots(app *a, tt_text *t, const results *r, int c, int n, const char *style) {
    tt_text label = new_text(a);
    tt_status status = describe_plot(&label, r, c);
    int i;
    for (i = 1; i < n && status == TT_OK; i++) {
        status = tt_text_format(&label, ". ");
        if (status == TT_OK) { status = describe_plot(&label, r, c + i); }
    }
    if (status == TT_OK) {
        status = svg_begin(t, n * PLOT_W, PLOT_H + 6 + (r->n_methods - 2) / 3 * 17, label.data);
    }
    if (status == TT_OK) { status = tt_text_format(t, "%s", style); }
    for (i = 0; i < n && status == TT_OK; i++) {
        status = tt_text_format(t, "<g transform=\"translate(%d)\">\n", i * PLOT_W);
        if (status == TT_OK) { status = draw_plot(t, r, c + i); }
        if (status == TT_OK) { status = tt_text_format(t, "</g>\n"); }
    }
    tt_text_free(&label);
    return status == TT_OK ? svg_end(t) : status;
}

static tt_status html_plots(app *a, tt_text *t, const results *r) {
    int c;
    CHECK(tt_text_format(t, "<div class=\"plots\">\n"));
    for (c = 0; c < N_PLOTS; c++) {
        if (c == KL && highest(r, c) <= 0) { continue; }
        CHECK(tt_text_format(t, "<figure>"));
        CHECK(draw_plots(a, t, r, c, 1, ""));
        CHECK(tt_text_format(t, "<figcaption>%s</figcaption></figure>\n", curves[c].meaning));
    }
    CHECK(tt_text_format(t, "</div>\n"));
    return highest(r, KL) > 0 ? TT_OK : tt_text_format(t, "<p>The KL to the base was not measured.</p>\n");
}

/* ---- tables ---- */
static tt_status html_table(tt_text *t, const results *r) {
    char text[64];
    int m, f;
    CHECK(tt_text_format(t, "<div class=\"wide\"><table><tr><th>student alone, held out</th>"));
    for (f = 0; f < N_FIGURES && has_figure(r, f); f++) {
        CHECK(tt_text_format(t, "<th>%s</th>", heading_of(r, f)));
    }
    for (m = 0; m < r->n_methods; m++) {
        CHECK(tt_text_format(t, "</tr>\n<tr><td class=\"name %s\">%s</td>", class_of(r, m), r->methods[m]));
        for (f = 0; f < N_FIGURES && has_figure(r, f); f++) {
            CHECK(tt_text_format(t, "<td>%s</td>", cell(r, m, f, " &plusmn; ", text, sizeof text)));
        }
    }
    CHECK(tt_text_format(t, "</tr></table></div>\n"));
    return html_terms(t, TERMS_RESULT, N_TERMS_RESULT + has_figure(r, N_FIGURES - 1));
}

/* Coherence and leak are known of built-in tasks alone. */
static tt_status html_gate(app *a, tt_text *t, const results *r) {
    static const char *const keys[] = {"teacher_hit", "rescue_rate", "spoil_rate", "said", "coherence"};
    int s, k, n = a->data ? 4 : 5;
    CHECK(tt_text_format(t, "<div class=\"wide\"><table><tr><th>seed</th>"));
    for (k = 0; k < n; k++) { CHECK(tt_text_format(t, "<th>%s</th>", terms[TERMS_GATE + k].name)); }
    CHECK(tt_text_format(t, "%s</tr>\n", a->data ? "" : "<th>leak, mean</th><th>leak, largest</th>"));
    for (s = 0; s < r->n_seeds; s++) {
        const tt_json *g = tt_json_get(r->of[0][s], "gate");
        CHECK(tt_text_format(t, "<tr><td>%d</td>", a->o.first_seed + s));
        for (k = 0; k < n; k++) { CHECK(tt_text_format(t, "<td>%.3f</td>", tt_json_number(g, keys[k], 0))); }
        if (!a->data) {
            CHECK(tt_text_format(t, "<td>%.1e</td><td>%.1e</td>", tt_json_number(g, "leak", 0),
                                 tt_json_number(g, "leak_max", 0)));
        }
        CHECK(tt_text_format(t, "</tr>\n"));
    }
    CHECK(tt_text_format(t, "</table></div>\n"));
    return html_terms(t, TERMS_GATE, a->data ? 4 : N_TERMS_GATE);
}

/* ---- what was said ---- */
/* The same questions to all, unselected: the first ones of the first seed. */
static tt_status html_transcripts(tt_text *t, const results *r) {
    const tt_json *at[MAX_ARMS + 1];
    int m;
    for (m = 0; m < r->n_methods; m++) { at[m] = tt_json_get(r->of[m][0], "transcripts")->child; }
    while (at[0]) {
        CHECK(html_question(t, tt_json_text(at[0], "question", "")));
        CHECK(tt_text_format(t, "<div class=\"side\">\n"));
        for (m = 0; m < r->n_methods && at[m]; m++) {
            int right = tt_json_number(at[m], "right", 0) > 0,
                first = tt_json_number(at[m], "first_right", 0) > 0;
            const char *note = right == first ? ""
                               : right        ? "in the end; first try wrong"
                                              : "in the end; first try right";
            CHECK(html_said(t, class_of(r, m), r->methods[m], tt_json_text(at[m], "response", ""), right,
                            tt_json_number(at[m], "cut", 0) > 0 ? "cut at the limit" : note));
            at[m] = at[m]->next;
        }
        CHECK(tt_text_format(t, "</div>\n"));
    }
    return TT_OK;
}

static tt_status html_guided(tt_text *t, const results *r) {
    const tt_json *g;
    for (g = tt_json_get(r->of[0][0], "guided")->child; g; g = g->next) {
        CHECK(html_question(t, tt_json_text(g, "question", "")));
        CHECK(html_said(t, "base", "student", tt_json_text(g, "attempt", ""), -1, ""));
        CHECK(html_said(t, "teacher", "teacher", tt_json_text(g, "feedback", ""),
                        tt_json_number(g, "right", 0) > 0, ""));
    }
    return TT_OK;
}

/* ---- the steps, to be opened one by one ---- */
static tt_status html_rollout(tt_text *t, const char *method, const tt_json *rollout) {
    const char *teacher = tt_json_text(rollout, "teacher", NULL);
    char note[96];
    snprintf(note, sizeof note, "reward %.2f, advantage %+.2f%s", tt_json_number(rollout, "reward", 0),
             tt_json_number(rollout, "advantage", 0),
             tt_json_number(rollout, "stopped", 1) > 0 ? "" : ", cut at the limit");
    CHECK(html_said(t, method, "student", tt_json_text(rollout, "student", ""), -1, note));
    return teacher ? html_said(t, "teacher", "teacher goes on", teacher, -1, "") : TT_OK;
}

static tt_status html_step(tt_text *t, const results *r, int m, const tt_json *line) {
    const tt_json *rollout;
    int step = (int)tt_json_number(line, "step", 0);
    CHECK(tt_text_format(t, "<details><summary>step %d: own reward %.3f, reflection %.3f</summary>\n", step,
                         *value_at(r, OWN_REWARD, m, 0, step), *value_at(r, REFLECTION, m, 0, step)));
    CHECK(html_question(t, tt_json_text(line, "question", "")));
    CHECK(tt_text_format(t, "<div class=\"side\">\n"));
    for (rollout = tt_json_get(line, "rollouts")->child; rollout; rollout = rollout->next) {
        CHECK(tt_text_format(t, "<div>"));
        CHECK(html_rollout(t, class_of(r, m), rollout));
        CHECK(tt_text_format(t, "</div>\n"));
    }
    return tt_text_format(t, "</div></details>\n");
}

/* All steps of a run of fifty, of a longer one every second, third, ... */
static tt_status html_steps_of(app *a, tt_text *t, const results *r, int m, tt_json_lines *lines) {
    int every = (r->n_steps + 49) / 50;
    tt_json *line;
    for (;;) {
        tt_status status;
        CHECK(tt_json_lines_next(lines, &line));
        if (!line) { return TT_OK; }
        status =
            (lines->line - 1) % every == 0 && lines->line <= r->n_steps ? html_step(t, r, m, line) : TT_OK;
        tt_json_free(a->ctx, line);
        CHECK(status);
    }
}

static tt_status html_steps(app *a, tt_text *t, const results *r) {
    int m;
    for (m = 1; m < r->n_methods; m++) {
        tt_json_lines lines = TT_INIT;
        tt_status status;
        if (!has_steps(r->methods[m])) { continue; }
        lines.ctx = a->ctx;
        CHECK(tt_text_format(t, "<details><summary><span class=\"name %s\">%s</span></summary>\n",
                             class_of(r, m), r->methods[m]));
        status = tt_json_lines_open(&lines, rollouts_path(a, r->methods[m]));
        if (status == TT_OK) { status = html_steps_of(a, t, r, m, &lines); }
        tt_json_lines_close(&lines);
        CHECK(status);
        CHECK(tt_text_format(t, "</details>\n"));
    }
    return TT_OK;
}

/* ---- the report ---- */
static tt_status write_budget(const results *r, tt_text *t) {
    const char *comma = "";
    int m;
    if (!trains(r)) { return TT_OK; }
    CHECK(tt_text_format(t, "Equal rollouts for all, not equal tokens. Sampled tokens per seed:"));
    for (m = 1; m < r->n_methods; m++) {
        if (strcmp(r->methods[m], "worked") == 0) { continue; }
        CHECK(tt_text_format(t, "%s %s %.2f M", comma, r->methods[m], sampled_tokens(r, m) / 1e6));
        comma = ",";
    }
    return tt_text_format(t, ".");
}

/* Difference of two methods over the same questions of all seeds, with its 95 % interval (bootstrap over
 * questions). */
static tt_status write_difference(app *a, const results *r, int x, int y, tt_text *t) {
    int n = r->n_seeds * a->o.questions, at = 0, s;
    double *values = (double *)tt_alloc(a->ctx, (size_t)n, sizeof *values), mean = 0;
    tt_interval interval = TT_INIT;
    tt_status status = values ? TT_OK : TT_ERR_MEM;
    for (s = 0; s < r->n_seeds && values; s++) {
        const tt_json *p = tt_json_get(r->of[x][s], "right"), *q = tt_json_get(r->of[y][s], "right");
        for (p = p ? p->child : NULL, q = q ? q->child : NULL; p && q && at < n; p = p->next, q = q->next) {
            mean += p->number - q->number;
            values[at++] = p->number - q->number;
        }
    }
    if (status == TT_OK && at > 0) { status = tt_bootstrap(a->ctx, values, at, 0, &interval); }
    if (status == TT_OK && at > 0) {
        status = tt_text_format(t, "%s, %s less %s: %+.4f [%+.4f, %+.4f] over %d questions", r->sampled,
                                r->methods[x], r->methods[y], mean / at, interval.low, interval.high, at);
    }
    tt_free(a->ctx, values, (size_t)n, sizeof *values);
    return status;
}

/* With --data: each method against the base, and each against the one before it. */
static tt_status write_differences(app *a, const results *r, const char *line, tt_text *t) {
    int m;
    if (!tt_json_get(r->of[0][0], "right")) { return TT_OK; }
    for (m = 1; m < r->n_methods; m++) {
        CHECK(tt_text_format(t, "%s", line));
        CHECK(write_difference(a, r, m, 0, t));
        if (m == 1) { continue; }
        CHECK(tt_text_format(t, "%s", line));
        CHECK(write_difference(a, r, m, m - 1, t));
    }
    return TT_OK;
}

static tt_status html_head(app *a, tt_text *t, const results *r) {
    double mean, sd;
    int m;
    CHECK(page_begin(t, "ThinkTuning: feedback against reward alone"));
    CHECK(tt_text_format(
        t,
        "<nav><a href=\"#results\">results</a> <a href=\"#training\">training</a> <a href=\"#before\">before "
        "RL</a> <a href=\"#after\">after</a> <a href=\"#steps\">every step</a> <a href=\"#settings\">settings"
        "</a></nav>\n<p>Task %s, %d seed%s (all that were run), %d steps of %d prompts x %d responses. Of "
        "the "
        "held-out questions, asked at T = %g, the student alone has right:",
        a->task.name, r->n_seeds, r->n_seeds > 1 ? "s" : "", r->n_steps, a->o.prompts, a->o.generations,
        a->o.temperature));
    for (m = 0; m < r->n_methods; m++) {
        mean_sd(r, m, ACCURACY, &mean, &sd);
        CHECK(tt_text_format(t, "%s <span class=\"name %s\">%s %.0f&nbsp;%%</span>", m ? "," : "",
                             class_of(r, m), r->methods[m], 100 * mean));
    }
    return tt_text_format(t, ".</p>\n");
}

static tt_status build_report(app *a, const results *r, tt_text *t) {
    CHECK(html_head(a, t, r));
    CHECK(page_heading(t, "results", "Results"));
    CHECK(html_table(t, r));
    CHECK(tt_text_format(t, "<p>"));
    CHECK(write_budget(r, t));
    CHECK(write_differences(a, r, "<br>", t));
    CHECK(tt_text_format(t, "</p>\n"));
    CHECK(page_heading(t, "training", "Training"));
    CHECK(html_plots(a, t, r));
    CHECK(page_heading(t, "before", "Before RL: can the base teach?"));
    CHECK(html_gate(a, t, r));
    CHECK(html_marks(t));
    CHECK(html_guided(t, r));
    CHECK(page_heading(t, "after", "Before and after: each student alone, greedy"));
    CHECK(html_transcripts(t, r));
    CHECK(page_heading(t, "steps", "Every step: what was said, and what it earned"));
    CHECK(tt_text_format(
        t,
        "<p>The first question of each step and its whole group. The advantage is the reward's distance from "
        "the group's mean, in deviations: above 0 a response becomes likelier, below 0 rarer.</p>\n"));
    CHECK(html_steps(a, t, r));
    CHECK(page_heading(t, "settings", "Settings"));
    CHECK(html_settings(t, a->ctx, &a->settings, a->whole));
    return page_end(t);
}

static tt_status write_pages(app *a, const results *r) {
    tt_text picture = new_text(a), report = new_text(a), style = new_text(a);
    tt_status status = svg_style(&style);
    if (status == TT_OK) { status = draw_plots(a, &picture, r, OWN_REWARD, 2, style.data); }
    if (status == TT_OK) {
        status = tt_file_write(a->ctx, path_of(a->o.out, "curves.svg"), picture.data, picture.size);
    }
    if (status == TT_OK) { status = build_report(a, r, &report); }
    if (status == TT_OK) {
        status = tt_file_write(a->ctx, path_of(a->o.out, "report.html"), report.data, report.size);
    }
    tt_text_free(&picture);
    tt_text_free(&report);
    tt_text_free(&style);
    return status;
}
