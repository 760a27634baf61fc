/* report.h - the second half of thinktune.c: reads result.json and metrics.jsonl of all seeds back and writes
 * summary.json, curves.svg and report.html. Everything comes from those files, so that a resumed run and a
 * whole one write the same. Stands on experiment.h. */

#include "page.h"

/* ---- results ---- */
typedef struct results {
    int n_seeds, n_methods, n_steps;
    const char *methods[MAX_ARMS + 1];
    char sampled[32];                             /* heading of the accuracy that is sampled        */
    tt_json *of[MAX_ARMS + 1][MAX_SEEDS];         /* result.json                                    */
    double *reward, *reflection, *tokens;         /* [method][seed][step] of metrics.jsonl          */
} results;
static size_t place_of(const results *r, int method, int seed, int step) {
    return ((size_t)method * (size_t)r->n_seeds + (size_t)seed) * (size_t)r->n_steps + (size_t)step;
}
static size_t n_places(const results *r) { return (size_t)r->n_methods * (size_t)r->n_seeds * (size_t)r->n_steps; }
static void free_results(app *a, results *r) {
    int m, s;
    for (m = 0; m < r->n_methods; m++) { for (s = 0; s < r->n_seeds; s++) { tt_json_free(a->ctx, r->of[m][s]); } }
    tt_free(a->ctx, r->reward, n_places(r), sizeof(double));
    tt_free(a->ctx, r->reflection, n_places(r), sizeof(double));
    tt_free(a->ctx, r->tokens, n_places(r), sizeof(double));
}
static void read_curve_line(app *a, results *r, const tt_json *json) {
    int m, seed = (int)tt_json_number(json, "seed", -1) - a->o.first_seed, step = (int)tt_json_number(json, "step", -1);
    for (m = 0; m < r->n_methods && strcmp(r->methods[m], tt_json_text(json, "method", "")) != 0; m++) { }
    if (m < r->n_methods && seed >= 0 && seed < r->n_seeds && step >= 0 && step < r->n_steps) {
        size_t at = place_of(r, m, seed, step);
        r->reward[at] = tt_json_number(json, "think/own_reward", 0);
        r->reflection[at] = tt_json_number(json, "think/reflection_rate", 0);
        r->tokens[at] = tt_json_number(json, "num_tokens", 0);
    }
}
static tt_status read_curves(app *a, results *r) {
    tt_json_lines lines = TT_INIT;
    tt_json *json;
    tt_status status;
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
    r->reward = (double *)tt_alloc(a->ctx, n_places(r), sizeof(double));
    r->reflection = (double *)tt_alloc(a->ctx, n_places(r), sizeof(double));
    r->tokens = (double *)tt_alloc(a->ctx, n_places(r), sizeof(double));
    if (!r->reward || !r->reflection || !r->tokens) { return TT_ERR_MEM; }
    for (m = 0; m < r->n_methods; m++) {
        for (s = 0; s < r->n_seeds; s++) { CHECK(read_json(a, result_path(a, a->o.first_seed + s, r->methods[m]), &r->of[m][s])); }
    }
    return read_curves(a, r);
}

/* The rows of every table: name in summary.json, heading, and where the figure stands in result.json. */
typedef struct figure { const char *name, *heading, *part, *key; } figure;
static const figure figures[] = {
    {"sampled_accuracy", NULL, "sampled", "accuracy"}, {"greedy_accuracy", "greedy", "greedy", "accuracy"},
    {"first_accuracy", "first try", "sampled", "first_accuracy"}, {"reflection_rate", "reflection", "sampled", "reflection_rate"},
    {"correction_rate", "correction", "sampled", "correction_rate"}, {"spoil_rate", "spoil", "sampled", "spoil_rate"},
    {"mean_length", "length", "sampled", "mean_length"}
};
enum { N_FIGURES = 7 };
static const char *heading_of(const results *r, int f) { return f ? figures[f].heading : r->sampled; }
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
    int digits = f == 6 ? 1 : 3;
    mean_sd(r, method, f, &mean, &sd);
    if (r->n_seeds > 1) { snprintf(out, size, "%.*f%s%.*f", digits, mean, sign, digits, sd); }
    else { snprintf(out, size, "%.*f", digits, mean); }
    return out;
}
static double sampled_tokens(const results *r, int method) {
    double sum = 0;
    int s;
    for (s = 0; s < r->n_seeds; s++) { sum += r->tokens[place_of(r, method, s, r->n_steps - 1)] / r->n_seeds; }
    return sum;
}
static tt_status write_summary(app *a, const results *r) {
    tt_text t = new_text(a);
    int m, f, s;
    double mean, sd;
    tt_status status = tt_text_format(&t, "{\"task\":\"%s\",\"seeds\":[", a->task.name);
    for (s = 0; s < r->n_seeds && status == TT_OK; s++) { status = tt_text_format(&t, "%s%d", s ? "," : "", a->o.first_seed + s); }
    if (status == TT_OK) { status = tt_text_format(&t, "],\"steps\":%d,\"methods\":{", r->n_steps); }
    for (m = 0; m < r->n_methods && status == TT_OK; m++) {
        status = tt_text_format(&t, "%s\n\"%s\":{\"num_tokens\":%r", m ? "," : "", r->methods[m], sampled_tokens(r, m));
        for (f = 0; f < N_FIGURES && status == TT_OK; f++) {
            mean_sd(r, m, f, &mean, &sd);
            status = tt_text_format(&t, ",\n  \"%s\":{\"mean\":%r,\"sd\":%r,\"values\":[", figures[f].name, mean, sd);
            for (s = 0; s < r->n_seeds && status == TT_OK; s++) { status = tt_text_format(&t, "%s%r", s ? "," : "", figure_of(r, m, s, f)); }
            if (status == TT_OK) { status = tt_text_append(&t, "]}", 2); }
        }
        if (status == TT_OK) { status = tt_text_append(&t, "}", 1); }
    }
    if (status == TT_OK) { status = tt_text_format(&t, "},\n\"gate\":["); }
    for (s = 0; s < r->n_seeds && status == TT_OK; s++) {
        const tt_json *g = tt_json_get(r->of[0][s], "gate");
        status = tt_text_format(&t, "%s\n  {\"seed\":%d,\"teacher_hit\":%r,\"coherence\":%r,\"leak\":%r,\"leak_max\":%r}", s ? "," : "", a->o.first_seed + s,
                                tt_json_number(g, "teacher_hit", 0), tt_json_number(g, "coherence", 0), tt_json_number(g, "leak", 0), tt_json_number(g, "leak_max", 0));
    }
    if (status == TT_OK) { status = tt_text_format(&t, "]}\n"); }
    if (status == TT_OK) { status = tt_file_write(a->ctx, path_of(a->o.out, "summary.json"), t.data, t.size); }
    tt_text_free(&t);
    return status;
}

/* ---- the picture ---- */
static const char *color_of(const char *method) {
    static const char *const colors[][2] = {{"base", "#6b7280"}, {"grpo", "#c2410c"}, {"thinktune", "#1d4ed8"}, {"formula", "#15803d"}, {"luffy", "#7e22ce"}};
    size_t i;
    for (i = 0; i < sizeof colors / sizeof *colors; i++) { if (strcmp(method, colors[i][0]) == 0) { return colors[i][1]; } }
    return "#a16207";
}
/* Mean over seeds first .. last and over the five steps around this one. */
static double curve_at(const results *r, const double *values, int method, int first, int last, int step) {
    double sum = 0;
    int s, k, n = 0;
    for (s = first; s <= last; s++) {
        for (k = step - 2; k <= step + 2; k++) { if (k >= 0 && k < r->n_steps) { sum += values[place_of(r, method, s, k)]; n++; } }
    }
    return sum / n;
}
enum { PANEL_W = 330, PANEL_H = 190 };
static tt_status draw_line(tt_text *t, const results *r, const double *values, int method, int first, int last, int x0, int y0) {
    int step, whole = last > first || r->n_seeds == 1;
    tt_status status = tt_text_format(t, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" stroke-opacity=\"%s\" points=\"", color_of(r->methods[method]),
                                      whole ? "2.5" : "1", whole ? "1" : "0.35");
    for (step = 0; step < r->n_steps && status == TT_OK; step++) {
        double x = x0 + (double)PANEL_W * step / (r->n_steps > 1 ? r->n_steps - 1 : 1), y = y0 + PANEL_H * (1 - curve_at(r, values, method, first, last, step));
        status = tt_text_format(t, "%.1f,%.1f ", x, y);
    }
    return status == TT_OK ? tt_text_format(t, "\"/>\n") : status;
}
static tt_status draw_panel(tt_text *t, const results *r, const double *values, const char *title, int x0, int y0) {
    int i, m, s;
    CHECK(tt_text_format(t, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s</text>\n", x0, y0 - 12, title));
    for (i = 0; i <= 4; i++) {
        int y = y0 + PANEL_H - PANEL_H * i / 4, x = x0 + PANEL_W * i / 4;
        CHECK(tt_text_format(t, "<line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\" stroke=\"#e5e7eb\"/><text x=\"%d\" y=\"%d\" text-anchor=\"end\" fill=\"#6b7280\">%.2f</text>", x0, x0 + PANEL_W, y, y, x0 - 6, y + 4, i / 4.0));
        CHECK(tt_text_format(t, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" fill=\"#6b7280\">%d</text>\n", x, y0 + PANEL_H + 18, (r->n_steps - 1) * i / 4));
    }
    for (m = 1; m < r->n_methods; m++) {
        for (s = 0; s < r->n_seeds && r->n_seeds > 1; s++) { CHECK(draw_line(t, r, values, m, s, s, x0, y0)); }
        CHECK(draw_line(t, r, values, m, 0, r->n_seeds - 1, x0, y0));
    }
    return TT_OK;
}
static tt_status draw_curves(tt_text *t, const results *r) {
    int m;
    CHECK(tt_text_format(t, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 290\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"800\" height=\"290\" fill=\"#ffffff\"/>\n"));
    CHECK(draw_panel(t, r, r->reward, "own reward: of the student's own responses", 46, 36));
    CHECK(draw_panel(t, r, r->reflection, "share that reflects", 446, 36));
    CHECK(tt_text_format(t, "<text x=\"46\" y=\"276\" fill=\"#6b7280\">RL step (mean of 5 steps, %d seed%s)</text>\n", r->n_seeds, r->n_seeds > 1 ? "s" : ""));
    for (m = 1; m < r->n_methods; m++) {
        int x = 446 + (m - 1) * 70;
        CHECK(tt_text_format(t, "<text x=\"%d\" y=\"276\" fill=\"%s\" font-weight=\"bold\">%s</text>\n", x, color_of(r->methods[m]), r->methods[m]));
    }
    return tt_text_format(t, "</svg>\n");
}

/* ---- the report ---- */
static tt_status html_table(tt_text *t, const results *r) {
    char text[64];
    int m, f;
    CHECK(tt_text_format(t, "<table><tr><th>student alone, held out</th>"));
    for (f = 0; f < N_FIGURES; f++) { CHECK(tt_text_format(t, "<th>%s</th>", heading_of(r, f))); }
    for (m = 0; m < r->n_methods; m++) {
        CHECK(tt_text_format(t, "</tr>\n<tr><td style=\"color:%s\"><b>%s</b></td>", color_of(r->methods[m]), r->methods[m]));
        for (f = 0; f < N_FIGURES; f++) { CHECK(tt_text_format(t, "<td>%s</td>", cell(r, m, f, " &plusmn; ", text, sizeof text))); }
    }
    return tt_text_format(t, "</tr></table>\n");
}
static tt_status html_gate(app *a, tt_text *t, const results *r) {
    int s, built_in = a->data == NULL;            /* coherence and leak are known of built-in tasks alone */
    CHECK(tt_text_format(t, "<table><tr><th>seed</th><th>teacher's hit</th><th>rescues</th><th>spoils</th><th>feedback not blank</th>%s</tr>\n",
                         built_in ? "<th>coherence</th><th>leak, mean</th><th>leak, largest</th>" : ""));
    for (s = 0; s < r->n_seeds; s++) {
        const tt_json *g = tt_json_get(r->of[0][s], "gate");
        CHECK(tt_text_format(t, "<tr><td>%d</td><td>%.3f</td><td>%.3f</td><td>%.3f</td><td>%.3f</td>", a->o.first_seed + s, tt_json_number(g, "teacher_hit", 0),
                             tt_json_number(g, "rescue_rate", 0), tt_json_number(g, "spoil_rate", 0), tt_json_number(g, "said", 0)));
        if (built_in) { CHECK(tt_text_format(t, "<td>%.3f</td><td>%.1e</td><td>%.1e</td>", tt_json_number(g, "coherence", 0), tt_json_number(g, "leak", 0), tt_json_number(g, "leak_max", 0))); }
        CHECK(tt_text_format(t, "</tr>\n"));
    }
    return tt_text_format(t, "</table>\n");
}
/* The same questions to all, unselected: the first ones of the first seed. */
static tt_status html_transcripts(tt_text *t, const results *r) {
    const tt_json *at[MAX_ARMS + 1];
    int m;
    for (m = 0; m < r->n_methods; m++) { at[m] = tt_json_get(r->of[m][0], "transcripts")->child; }
    while (at[0]) {
        CHECK(html_said(t, "q", "question", tt_json_text(at[0], "question", ""), -1));
        for (m = 0; m < r->n_methods && at[m]; m++) {
            CHECK(html_said(t, "s", r->methods[m], tt_json_text(at[m], "response", ""), (int)tt_json_number(at[m], "right", 0)));
            at[m] = at[m]->next;
        }
    }
    return TT_OK;
}
static tt_status html_guided(tt_text *t, const results *r) {
    const tt_json *g;
    for (g = tt_json_get(r->of[0][0], "guided")->child; g; g = g->next) {
        CHECK(html_said(t, "q", "question", tt_json_text(g, "question", ""), -1));
        CHECK(html_said(t, "s", "student", tt_json_text(g, "attempt", ""), -1));
        CHECK(html_said(t, "t", "teacher", tt_json_text(g, "feedback", ""), (int)tt_json_number(g, "right", 0)));
    }
    return TT_OK;
}
static tt_status write_budget(const results *r, tt_text *t) {
    int m;
    CHECK(tt_text_format(t, "Equal rollouts for all, not equal tokens. Sampled tokens per seed:"));
    for (m = 1; m < r->n_methods; m++) { CHECK(tt_text_format(t, " %s %.2f M%s", r->methods[m], sampled_tokens(r, m) / 1e6, m + 1 < r->n_methods ? "," : ".")); }
    return TT_OK;
}
/* Difference of two methods over the same questions of all seeds, with its 95 % interval (bootstrap over questions). */
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
        status = tt_text_format(t, "%s, %s less %s: %+.4f [%+.4f, %+.4f] over %d questions", r->sampled, r->methods[x], r->methods[y], mean / at, interval.low, interval.high, at);
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
static tt_status build_report(app *a, const results *r, tt_text *t, const tt_text *curves) {
    CHECK(page_begin(t, "ThinkTuning", "Feedback against reward alone"));
    CHECK(tt_text_format(t, "<p>Task %s, %d seed%s (all that were run), %d steps of %d prompts x %d responses. ", a->task.name, r->n_seeds, r->n_seeds > 1 ? "s" : "", r->n_steps, a->o.prompts, a->o.generations));
    CHECK(write_budget(r, t));
    CHECK(tt_text_format(t, "</p>\n"));
    CHECK(html_table(t, r));
    CHECK(write_differences(a, r, "<br>", t));
    CHECK(tt_text_append(t, curves->data, curves->size));
    CHECK(tt_text_format(t, "<h2>Before RL: can the base teach?</h2>\n"));
    CHECK(html_gate(a, t, r));
    CHECK(html_guided(t, r));
    CHECK(tt_text_format(t, "<h2>After: each student alone, greedy</h2>\n"));
    CHECK(html_transcripts(t, r));
    return tt_text_format(t, "</html>\n");
}
static tt_status write_pages(app *a, const results *r) {
    tt_text curves = new_text(a), report = new_text(a);
    tt_status status = draw_curves(&curves, r);
    if (status == TT_OK) { status = tt_file_write(a->ctx, path_of(a->o.out, "curves.svg"), curves.data, curves.size); }
    if (status == TT_OK) { status = build_report(a, r, &report, &curves); }
    if (status == TT_OK) { status = tt_file_write(a->ctx, path_of(a->o.out, "report.html"), report.data, report.size); }
    tt_text_free(&curves);
    tt_text_free(&report);
    return status;
}
