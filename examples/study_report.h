/* study_report.h - the second half of study.c: reads the result of every finished job and writes
 * results.jsonl, table.md and report.html, as far as the study has come. Means have 95 % intervals of
 * Student's t over seeds; comparisons are paired by seed, and their p is exact: the share of all ways to flip
 * the signs of the differences that give a mean at least as far from zero (two-sided; with 5 seeds never
 * below 2/32 = 0.06). */
#include "page.h"

typedef struct results {
    tt_json *of[N_ARMS][MAX_SEEDS]; /* NULL = not run yet */
} results;

/* ---- statistics ---- */
typedef struct sample {
    int n;
    double values[MAX_SEEDS];
} sample;
/* Two-sided 95 % of Student's t. */
static double t_quantile(int freedom) {
    static const double values[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                    2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                    2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
    return freedom < 1 ? 0 : freedom <= 30 ? values[freedom - 1] : 1.96 + 2.5 / freedom;
}

static double mean_of(const sample *s) {
    double sum = 0;
    int i;
    for (i = 0; i < s->n; i++) { sum += s->values[i]; }
    return s->n ? sum / s->n : (double)NAN;
}

static double half_interval(const sample *s) {
    double mean = mean_of(s), squares = 0;
    int i;
    for (i = 0; i < s->n; i++) { squares += (s->values[i] - mean) * (s->values[i] - mean); }
    return s->n > 1 ? t_quantile(s->n - 1) * sqrt(squares / (s->n - 1) / s->n) : 0;
}

/* Exact below 17 differences; beyond, over 65536 of the sign patterns. */
static double sign_flip_p(const sample *s) {
    int n = s->n < 16 ? s->n : 16, pattern, extreme = 0, i;
    double observed = fabs(mean_of(s)) * s->n;
    for (pattern = 0; pattern < 1 << n; pattern++) {
        double sum = 0;
        for (i = 0; i < s->n; i++) { sum += (pattern >> i % n) & 1 ? -s->values[i] : s->values[i]; }
        extreme += fabs(sum) >= observed - 1e-12;
    }
    return (double)extreme / (1 << n);
}

/* ---- reading ---- */
static int place_of_arm(const char *name) { return (int)(arm_named(name) - arms); }

/* part NULL: of the result itself. NaN if it was not run. */
static double value_of(const results *r, int arm_at, int seed, const char *part, const char *key) {
    const tt_json *json = r->of[arm_at][seed];
    return tt_json_number(part ? tt_json_get(json, part) : json, key, (double)NAN);
}

static sample sample_of(const results *r, int arm_at, const char *part, const char *key) {
    sample s;
    int seed;
    s.n = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        double value = value_of(r, arm_at, seed, part, key);
        if (value == value) { s.values[s.n++] = value; }
    }
    return s;
}

/* Differences of two arms over the seeds that have both. */
static sample paired(const results *r, int arm_at, int other, const char *part, const char *key) {
    sample s;
    int seed;
    s.n = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        double x = value_of(r, arm_at, seed, part, key), y = value_of(r, other, seed, part, key);
        if (x == x && y == y) { s.values[s.n++] = x - y; }
    }
    return s;
}

/* Reads what is there and copies it, one line each, into results.jsonl. */
static tt_status read_results(app *a, results *r, tt_text *lines) {
    int i, seed;
    memset(r, 0, sizeof *r);
    for (i = 0; i < N_ARMS; i++) {
        for (seed = 0; seed < given.seeds; seed++) {
            const char *path = result_path(a, given.first_seed + seed, arms[i].name);
            size_t from = lines->size;
            if (!tt_file_exists(path)) { continue; }
            CHECK(tt_file_read(a->ctx, path, lines));
            r->of[i][seed] = tt_json_parse(a->ctx, lines->data + from, lines->size - from);
            if (!r->of[i][seed]) { return tt_error_status(a->ctx); }
        }
    }
    return TT_OK;
}

static void free_results(app *a, results *r) {
    int i, seed;
    for (i = 0; i < N_ARMS; i++) {
        for (seed = 0; seed < given.seeds; seed++) { tt_json_free(a->ctx, r->of[i][seed]); }
    }
}

/* ---- the same tables as Markdown and as HTML ---- */
typedef struct page {
    tt_text *text;
    int html, cells;
} page;
static tt_status heading(page *p, const char *id, const char *text) {
    return p->html ? page_heading(p->text, id, text) : tt_text_format(p->text, "\n### %s\n\n", text);
}

static tt_status paragraph(page *p, const char *format, ...) {
    va_list list;
    tt_status status = tt_text_format(p->text, p->html ? "<p>" : "");
    va_start(list, format);
    if (status == TT_OK) { status = tt_text_vformat(p->text, format, list); }
    va_end(list);
    return status == TT_OK ? tt_text_format(p->text, p->html ? "</p>\n" : "\n\n") : status;
}

static tt_status table_begin(page *p, const char *const *headings, int n) {
    int i;
    CHECK(tt_text_format(p->text, p->html ? "<div class=\"wide\"><table><tr>" : "|"));
    for (i = 0; i < n; i++) {
        CHECK(tt_text_format(p->text, p->html ? "<th>%s</th>" : " %s |", headings[i]));
    }
    CHECK(tt_text_format(p->text, p->html ? "</tr>\n" : "\n|---|"));
    for (i = 1; i < n && !p->html; i++) { CHECK(tt_text_format(p->text, "---:|")); }
    return p->html ? TT_OK : tt_text_append(p->text, "\n", 1);
}

static tt_status table_end(page *p) { return tt_text_format(p->text, p->html ? "</table></div>\n" : "\n"); }

static tt_status cell(page *p, const char *format, ...) {
    va_list list;
    tt_status status;
    if (p->cells++ == 0) { CHECK(tt_text_format(p->text, p->html ? "<tr>" : "|")); }
    CHECK(tt_text_format(p->text, p->html ? "<td>" : " "));
    va_start(list, format);
    status = tt_text_vformat(p->text, format, list);
    va_end(list);
    return status == TT_OK ? tt_text_format(p->text, p->html ? "</td>" : " |") : status;
}

static tt_status row_end(page *p) {
    p->cells = 0;
    return tt_text_format(p->text, p->html ? "</tr>\n" : "\n");
}

static tt_status mean_cell(page *p, const sample *s, int digits, const char *sign) {
    if (s->n == 0) { return cell(p, "–"); }
    if (s->n == 1) { return cell(p, "%s%.*f", *sign && mean_of(s) >= 0 ? sign : "", digits, mean_of(s)); }
    return cell(p, "%s%.*f ± %.*f", *sign && mean_of(s) >= 0 ? sign : "", digits, mean_of(s), digits,
                half_interval(s));
}

/* ---- the main table and its two claims ---- */
typedef struct column {
    const char *heading, *part, *key;
    int digits;
} column;
static const column columns[] = {
    {"accuracy T = 1", "sampled", "accuracy", 3},
    {"greedy", "greedy", "accuracy", 3},
    {"attempts", "sampled", "attempt_rate", 3},
    {"first try", "sampled", "first_accuracy", 3},
    {"works first", "sampled", "works_first", 3},
    {"reflection", "sampled", "reflection_rate", 3},
    {"correction", "sampled", "correction_rate", 3},
    {"spoil", "sampled", "spoil_rate", 3},
    {"length", "sampled", "mean_length", 1}
};
enum { N_COLUMNS = sizeof columns / sizeof *columns };
static tt_status main_table(page *p, const results *r, const char *part) {
    const char *headings[N_COLUMNS + 3] = {"student alone, held out"};
    sample s;
    int i, c;
    for (c = 0; c < N_COLUMNS; c++) { headings[c + 1] = columns[c].heading; }
    headings[N_COLUMNS + 1] = "rollouts";
    headings[N_COLUMNS + 2] = "sampled tokens";
    CHECK(table_begin(p, headings, N_COLUMNS + 3));
    for (i = 0; i < N_ARMS; i++) {
        if (strcmp(arms[i].part, part) != 0 || sample_of(r, i, "sampled", "accuracy").n == 0) { continue; }
        CHECK(cell(p, "%s", arms[i].what));
        for (c = 0; c < N_COLUMNS; c++) {
            s = sample_of(r, i, columns[c].part, columns[c].key);
            CHECK(mean_cell(p, &s, columns[c].digits, ""));
        }
        s = sample_of(r, i, NULL, "rollouts");
        CHECK(s.n ? cell(p, "%.0f", mean_of(&s)) : cell(p, "–"));
        s = sample_of(r, i, NULL, "num_tokens");
        CHECK(s.n ? cell(p, "%.2f M", mean_of(&s) / 1e6) : cell(p, "–"));
        CHECK(row_end(p));
    }
    return table_end(p);
}

static int reflects(const results *r, int arm_at, int seed) {
    return reflects_and_corrects(tt_json_get(r->of[arm_at][seed], "sampled"));
}

static tt_status claim_of_reflection(page *p, const results *r, const char *with, const char *without,
                                     const char *budget) {
    int x = place_of_arm(with), y = place_of_arm(without), seed, n = 0, only_with = 0, only_without = 0,
        both = 0, i, low, k;
    double chance = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        if (!r->of[x][seed] || !r->of[y][seed]) { continue; }
        n++;
        both += reflects(r, x, seed) && reflects(r, y, seed);
        only_with += reflects(r, x, seed) && !reflects(r, y, seed);
        only_without += !reflects(r, x, seed) && reflects(r, y, seed);
    }
    if (n == 0) { return TT_OK; }
    k = only_with + only_without;
    for (low = only_with; low <= k; low++) { /* exact sign test: P(at least so many of k | 1/2) */
        double ways = 1;
        for (i = 0; i < low; i++) { ways = ways * (k - i) / (i + 1); }
        chance += ways / pow(2, k);
    }
    return paragraph(
        p,
        "Reflection that corrects (rate above 0.5, corrections above 0.3), %s: with the teacher alone in %d "
        "of %d seeds, in both %d, with reward alone %d; exact sign test, one-sided, p = %.3f.",
        budget, only_with, n, both, only_without, chance);
}

static tt_status claim_of_accuracy(page *p, const results *r, const char *x, const char *y,
                                   const char *budget) {
    sample s = paired(r, place_of_arm(x), place_of_arm(y), "sampled", "accuracy"),
           g = paired(r, place_of_arm(x), place_of_arm(y), "greedy", "accuracy");
    if (s.n < 2) { return TT_OK; }
    return paragraph(p,
                     "Accuracy of ThinkTuning less that of %s: %+.3f ± %.3f at T = 1 (paired over %d seeds, "
                     "p = %.3f), %+.3f ± %.3f greedy (p = %.3f).",
                     budget, mean_of(&s), half_interval(&s), s.n, sign_flip_p(&s), mean_of(&g),
                     half_interval(&g), sign_flip_p(&g));
}

static tt_status claims(page *p, const results *r) {
    CHECK(claim_of_reflection(p, r, "thinktune", "grpo", "at equal rollouts"));
    CHECK(claim_of_reflection(p, r, "thinktune", "grpo_tokens", "at equal sampled tokens"));
    CHECK(claim_of_reflection(p, r, "low_thinktune", "low_grpo",
                              "weaker bases, GRPO with five times the rollouts"));
    CHECK(claim_of_reflection(p, r, "incoherent_thinktune", "incoherent_grpo_long",
                              "bases of low coherence, GRPO with five times the rollouts"));
    CHECK(claim_of_reflection(
        p, r, "incoherent_thinktune_long", "incoherent_grpo_long",
        "bases of low coherence, ThinkTuning with three times the rollouts and GRPO with five"));
    CHECK(claim_of_reflection(
        p, r, "incoherent_thinktune_long", "incoherent_grpo_tokens",
        "bases of low coherence, ThinkTuning with three times the rollouts and GRPO with as many tokens"));
    CHECK(claim_of_accuracy(p, r, "thinktune", "grpo", "GRPO at equal rollouts"));
    CHECK(claim_of_accuracy(p, r, "thinktune", "grpo_tokens", "GRPO at equal sampled tokens"));
    CHECK(claim_of_accuracy(p, r, "incoherent_thinktune_long", "incoherent_grpo_tokens",
                            "GRPO with as many tokens, on bases of low coherence"));
    return claim_of_accuracy(p, r, "thinktune", "sft", "SFT on the teacher's right outputs");
}

/* ---- the budget as an axis: rollouts until the student's own reflection passes a rate ---- */
typedef struct lifetime {
    int n, started;
    double at[MAX_SEEDS];
    int event[MAX_SEEDS];
} lifetime; /* sorted by time */
static lifetime lifetime_of(const results *r, int arm_at, const char *key) {
    lifetime l;
    int seed, i;
    memset(&l, 0, sizeof l);
    for (seed = 0; seed < given.seeds; seed++) {
        double first = value_of(r, arm_at, seed, NULL, key),
               end = value_of(r, arm_at, seed, NULL, "rollouts"), at = first > 0 ? first : end;
        if (!(at > 0)) { continue; }
        for (i = l.n++; i > 0 && l.at[i - 1] > at; i--) {
            l.at[i] = l.at[i - 1];
            l.event[i] = l.event[i - 1];
        }
        l.at[i] = at;
        l.event[i] = first > 0;
        l.started += first > 0;
    }
    return l;
}

/* Kaplan and Meier's: the share that has not started just after rollout x. */
static double survival(const lifetime *l, double x) {
    double alive = 1;
    int i;
    for (i = 0; i < l->n && l->at[i] <= x; i++) {
        if (l->event[i]) { alive *= 1 - 1.0 / (l->n - i); }
    }
    return alive;
}

static double median_start(const lifetime *l) {
    int i;
    for (i = 0; i < l->n; i++) {
        if (l->event[i] && survival(l, l->at[i]) <= 0.5) { return l->at[i]; }
    }
    return -1;
}

static const char *const budget_arms[] = {"thinktune",
                                          "grpo_tokens",
                                          "low_thinktune",
                                          "low_grpo",
                                          "incoherent_thinktune",
                                          "incoherent_thinktune_long",
                                          "incoherent_grpo_long",
                                          "incoherent_grpo_tokens"};
static const char *const line_classes[] = {"k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"};
enum { N_BUDGET_ARMS = sizeof budget_arms / sizeof *budget_arms, N_LINES = 8 };
static tt_status budget_table(page *p, const results *r) {
    static const char *const headings[] = {"rollouts until own reflection passes",
                                           "10 %: seeds",
                                           "median",
                                           "earliest",
                                           "50 %: seeds",
                                           "median",
                                           "earliest",
                                           "watched for"};
    int i, k;
    CHECK(table_begin(p, headings, 8));
    for (i = 0; i < N_BUDGET_ARMS; i++) {
        int at = place_of_arm(budget_arms[i]);
        sample rollouts = sample_of(r, at, NULL, "rollouts");
        if (rollouts.n == 0) { continue; }
        CHECK(cell(p, "%s", arms[at].what));
        for (k = 0; k < 2; k++) {
            lifetime l = lifetime_of(r, at, k ? "first_50" : "first_10");
            double median = median_start(&l), earliest = -1;
            int s;
            for (s = l.n - 1; s >= 0; s--) {
                if (l.event[s]) { earliest = l.at[s]; }
            }
            CHECK(cell(p, "%d of %d", l.started, l.n));
            CHECK(median > 0 ? cell(p, "%.0f", median) : cell(p, "not reached"));
            CHECK(earliest > 0 ? cell(p, "%.0f", earliest) : cell(p, "–"));
        }
        CHECK(cell(p, "%.0f", mean_of(&rollouts)));
        CHECK(row_end(p));
    }
    return table_end(p);
}

/* ---- pictures ---- */
/* Arms of one picture that have a run, and the classes of their lines. */
typedef struct picked {
    int n, at[N_LINES], line[N_LINES];
} picked;

static void pick(picked *arms_of, const results *r, int at, int line) {
    if (arms_of->n == N_LINES || sample_of(r, at, NULL, "rollouts").n == 0) { return; }
    arms_of->at[arms_of->n] = at;
    arms_of->line[arms_of->n++] = line;
}

static picked in_budget(const results *r) {
    picked which = TT_INIT;
    int i;
    for (i = 0; i < N_BUDGET_ARMS; i++) { pick(&which, r, place_of_arm(budget_arms[i]), i); }
    return which;
}

/* Rollouts, logarithmic: from those of one step on, so far that all runs fit in and each quarter is a power
 * of two. */
static plot budget_plot(const results *r, const picked *which, const char *title) {
    plot p = TT_INIT;
    double most = 0;
    int i, seed;
    for (i = 0; i < which->n; i++) {
        for (seed = 0; seed < given.seeds; seed++) {
            most = fmax(most, value_of(r, which->at[i], seed, NULL, "rollouts"));
        }
    }
    p.title = title;
    p.x_label = "rollouts";
    p.y_high = 1;
    p.logarithmic = 1;
    p.x_low = (double)given.prompts * given.generations;
    for (p.x_high = 16 * p.x_low; p.x_high < most; p.x_high *= 16) { }
    return p;
}

static plot step_plot(const char *title) {
    plot p = TT_INIT;
    p.title = title;
    p.x_label = "RL step (mean over seeds and five steps)";
    p.x_high = given.steps > 1 ? given.steps - 1 : 1;
    p.y_high = 1;
    return p;
}

static tt_status draw_point(tt_text *t, const plot *p, double x, double y) {
    return tt_text_format(t, "%.1f,%.1f ", plot_x(p, x), plot_y(p, y));
}

static tt_status draw_legend(tt_text *t, const picked *which) {
    int i;
    for (i = 0; i < which->n; i++) {
        CHECK(plot_legend(t, i, 1, line_classes[which->line[i]], arms[which->at[i]].what));
    }
    return TT_OK;
}

static tt_status draw_lifetime(tt_text *t, const plot *p, const lifetime *l, const char *class_name) {
    int k;
    CHECK(tt_text_format(t, "<polyline class=\"line %s\" points=\"", class_name));
    CHECK(draw_point(t, p, p->x_low, 1));
    for (k = 0; k < l->n; k++) {
        CHECK(draw_point(t, p, l->at[k], survival(l, l->at[k] - 0.5)));
        CHECK(draw_point(t, p, l->at[k], survival(l, l->at[k])));
    }
    CHECK(tt_text_format(t, "\"/>\n"));
    for (k = 0; k < l->n; k++) { /* a cross where a run ends that never started */
        if (l->event[k]) { continue; }
        CHECK(tt_text_format(
            t,
            "<g class=\"%s\"><text class=\"end\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">+</text></g>\n",
            class_name, plot_x(p, l->at[k]), plot_y(p, survival(l, l->at[k])) + 4));
    }
    return TT_OK;
}

static tt_status draw_survival(tt_text *t, const results *r, const picked *which, const plot *p,
                               const char *key) {
    int i;
    for (i = 0; i < which->n; i++) {
        lifetime l = lifetime_of(r, which->at[i], key);
        if (l.n > 0) { CHECK(draw_lifetime(t, p, &l, line_classes[which->line[i]])); }
    }
    return TT_OK;
}

/* Mean over seeds of one column of their curves, and over the five steps around this one. */
static double curve_at(const results *r, int arm_at, int step, int column_at) {
    double sum = 0;
    int seed, n = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        const tt_json *point = tt_json_get(r->of[arm_at][seed], "curve");
        int k = 0;
        for (point = point ? point->child : NULL; point && k <= step + 2; point = point->next, k++) {
            if (k < step - 2) { continue; }
            sum += column_at ? point->child->next->number : point->child->number;
            n++;
        }
    }
    return n ? sum / n : (double)NAN;
}

/* A logarithmic axis counts rollouts, with fewer points the further it goes, a linear one counts steps. */
static tt_status draw_curves(tt_text *t, const results *r, const picked *which, const plot *p,
                             int column_at) {
    int i, step;
    for (i = 0; i < which->n; i++) {
        double per_step = p->logarithmic ? p->x_low : 1;
        CHECK(tt_text_format(t, "<polyline class=\"line %s\" points=\"", line_classes[which->line[i]]));
        for (step = 0; step * per_step < p->x_high + !p->logarithmic; step += 1 + step / 50) {
            double y = curve_at(r, which->at[i], step, column_at);
            if (y == y) { CHECK(draw_point(t, p, per_step * (step + p->logarithmic), y)); }
        }
        CHECK(tt_text_format(t, "\"/>\n"));
    }
    return TT_OK;
}

/* One picture: of lifetimes by their key, or of a column of the curves where that is NULL. */
static tt_status picture(page *p, const results *r, const picked *which, const plot *axes, const char *key,
                         int column_at, const char *meaning) {
    CHECK(tt_text_format(p->text, "<figure>"));
    CHECK(svg_begin(p->text, PLOT_W, PLOT_H + 17 * which->n, axes->title));
    CHECK(plot_axes(p->text, axes));
    CHECK(key ? draw_survival(p->text, r, which, axes, key)
              : draw_curves(p->text, r, which, axes, column_at));
    CHECK(draw_legend(p->text, which));
    CHECK(svg_end(p->text));
    return tt_text_format(p->text, "<figcaption>%s</figcaption></figure>\n", meaning);
}

#define OWN_REWARD_MEANS "Reward of the student's own rollouts, mean over seeds and five steps."
#define REFLECTION_MEANS "Share of the student's own rollouts that reflect, mean over seeds and five steps."

static tt_status budget_picture(page *p, const results *r, const char *title, const char *key, int column_at,
                                const char *meaning) {
    picked which = in_budget(r);
    plot axes = budget_plot(r, &which, title);
    return picture(p, r, &which, &axes, key, column_at, meaning);
}

static tt_status pictures(page *p, const results *r) {
    static const char alive[] =
        "Share of seeds whose student does not yet reflect by itself so often "
        "(Kaplan-Meier); + marks the end "
        "of a run that never started. From tick to tick the rollouts are four times as many.";
    if (!p->html) { return TT_OK; }
    CHECK(tt_text_format(p->text, "<div class=\"plots\">\n"));
    CHECK(budget_picture(p, r, "seeds with reflection below 10 % (share)", "first_10", 0, alive));
    CHECK(budget_picture(p, r, "seeds with reflection below 50 % (share)", "first_50", 0, alive));
    CHECK(budget_picture(p, r, "own reward (1 = right)", NULL, 0, OWN_REWARD_MEANS));
    CHECK(budget_picture(p, r, "reflection (share of responses)", NULL, 1, REFLECTION_MEANS));
    return tt_text_format(p->text, "</div>\n");
}

/* ---- what was said ---- */
/* The same questions to all, unselected: the first ones of the first seed. */
static tt_status said_by(page *p, const results *r, const int *places, const char *const *classes, int n,
                         int most) {
    const tt_json *at[N_ARMS];
    int k;
    for (k = 0; k < n; k++) {
        const tt_json *list = tt_json_get(r->of[places[k]][0], "transcripts");
        at[k] = list ? list->child : NULL;
    }
    for (; n > 0 && at[0] && most > 0; most--) {
        CHECK(html_question(p->text, tt_json_text(at[0], "question", "")));
        CHECK(tt_text_format(p->text, "<div class=\"side\">\n"));
        for (k = 0; k < n; k++) {
            if (!at[k]) { continue; }
            CHECK(html_said(p->text, classes[k], arms[places[k]].name, tt_json_text(at[k], "response", ""),
                            tt_json_number(at[k], "right", 0) > 0,
                            tt_json_number(at[k], "cut", 0) > 0 ? "cut at the limit" : ""));
            at[k] = at[k]->next;
        }
        CHECK(tt_text_format(p->text, "</div>\n"));
    }
    return TT_OK;
}

static tt_status transcripts(page *p, const results *r) {
    static const char *const names[] = {"base", "grpo", "sft", "thinktune"};
    int places[4], k;
    if (!p->html) { return TT_OK; }
    CHECK(heading(p, "after", "Each student alone, greedy: the first questions of the first seed"));
    CHECK(html_marks(p->text));
    for (k = 0; k < 4; k++) { places[k] = place_of_arm(names[k]); }
    return said_by(p, r, places, names, 4, SHOWN);
}

/* ---- learning from feedback ---- */
static const struct { const char *heading, *part, *key; int digits; } feedback_columns[] = {
    {"accuracy T = 1", "sampled", "accuracy", 3}, {"greedy", "greedy", "accuracy", 3},
    {"reflection", "sampled", "reflection_rate", 3}, {"correction", "sampled", "correction_rate", 3},
    {"spoil", "sampled", "spoil_rate", 3}, {"out of domain T = 1", "shift", "accuracy", 3},
    {"greedy", "shift_greedy", "accuracy", 3}, {"reflection there", "shift", "reflection_rate", 3},
    {"right after reading", "method", "hit", 3}, {"scored", "method", "scored", 0},
    {"nothing to read", "method", "no_context", 0}, {"sampled tokens", NULL, "num_tokens", 0}
};
enum { N_FEEDBACK_COLUMNS = sizeof feedback_columns / sizeof *feedback_columns };

/* An arm of the part, or the one that the arms of the part start from. */
static int belongs(int at, const char *part) {
    int begins = strcmp(part, "keep") == 0 && arms[at].keeps;
    return begins || strcmp(arms[at].part, part) == 0;
}

/* Two cells: accuracy less that of another arm, seed by seed, and its p. */
static tt_status difference_cells(page *p, const results *r, int at, int other) {
    sample difference = paired(r, at, other, "sampled", "accuracy");
    CHECK(at == other ? cell(p, "–") : mean_cell(p, &difference, 3, "+"));
    return at == other || difference.n < 2 ? cell(p, "–") : cell(p, "%.3f", sign_flip_p(&difference));
}

/* In how many seeds the student reflects and corrects. */
static tt_status reflects_cell(page *p, const results *r, int at) {
    int seed, n = 0, good = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        n += r->of[at][seed] != NULL;
        good += r->of[at][seed] && reflects(r, at, seed);
    }
    return cell(p, "%d of %d", good, n);
}

static tt_status feedback_table(page *p, const results *r, const char *part, const char *grpo) {
    const char *headings[N_FEEDBACK_COLUMNS + 4] = {"student alone, held out"};
    sample s;
    int i, c;
    for (c = 0; c < N_FEEDBACK_COLUMNS; c++) { headings[c + 1] = feedback_columns[c].heading; }
    headings[c + 1] = "less GRPO's accuracy";
    headings[c + 2] = "p";
    headings[c + 3] = "reflects and corrects";
    CHECK(table_begin(p, headings, N_FEEDBACK_COLUMNS + 4));
    for (i = 0; i < N_ARMS; i++) {
        int first = arms[i].keeps && strcmp(part, "keep") == 0;
        if (!belongs(i, part) || sample_of(r, i, "sampled", "accuracy").n == 0) { continue; }
        CHECK(cell(p, "%s%s", arms[i].what, first ? ", from which all others start" : ""));
        for (c = 0; c < N_FEEDBACK_COLUMNS; c++) {
            s = sample_of(r, i, feedback_columns[c].part, feedback_columns[c].key);
            CHECK(s.n ? mean_cell(p, &s, feedback_columns[c].digits, "") : cell(p, "–"));
        }
        CHECK(difference_cells(p, r, i, place_of_arm(grpo)));
        CHECK(reflects_cell(p, r, i));
        CHECK(row_end(p));
    }
    return table_end(p);
}

/* The arms of a part that have curves of equal length. */
static picked with_curves(const results *r, const char *part) {
    picked which = TT_INIT;
    int i;
    for (i = 0; i < N_ARMS; i++) {
        int equal = strcmp(arms[i].part, part) == 0 && !arms[i].equal_tokens && arms[i].method != SFT;
        if (equal) { pick(&which, r, i, which.n); }
    }
    return which;
}

/* These curves, and three answers of every arm to the same questions. */
static tt_status feedback_pictures(page *p, const results *r, const char *part) {
    picked which = with_curves(r, part);
    plot reward = step_plot("own reward (1 = right)");
    plot reflection = step_plot("reflection (share of responses)");
    const char *classes[N_ARMS];
    int places[N_ARMS], n = 0, i, k;
    if (!p->html) { return TT_OK; }
    for (i = 0; i < N_ARMS; i++) {
        if (!belongs(i, part) || sample_of(r, i, "sampled", "accuracy").n == 0) { continue; }
        for (k = 0; k < which.n && which.at[k] != i; k++) { }
        classes[n] = k < which.n ? line_classes[k] : "base";
        places[n++] = i;
    }
    CHECK(tt_text_format(p->text, "<div class=\"plots\">\n"));
    CHECK(picture(p, r, &which, &reward, NULL, 0, OWN_REWARD_MEANS));
    CHECK(picture(p, r, &which, &reflection, NULL, 1, REFLECTION_MEANS));
    CHECK(tt_text_format(p->text, "</div>\n"));
    return said_by(p, r, places, classes, n, 3);
}

/* feedback.svg: reflection of both parts side by side. */
static tt_status draw_feedback(tt_text *t, const results *r) {
    static const char *const parts[] = {"create", "keep"};
    static const char *const titles[] = {"create: reflection (share of responses)",
                                         "keep or destroy: reflection"};
    int height = PLOT_H + 17 * N_LINES, k;
    CHECK(svg_begin(t, 2 * PLOT_W, height, "Reflection per RL step of eight methods, from a base that never "
                    "reflects and from a student that always does"));
    CHECK(svg_style(t));
    for (k = 0; k < 2; k++) {
        picked which = with_curves(r, parts[k]);
        plot axes = step_plot(titles[k]);
        CHECK(tt_text_format(t, "<g transform=\"translate(%d)\">\n", k * PLOT_W));
        CHECK(plot_axes(t, &axes));
        CHECK(draw_curves(t, r, &which, &axes, 1));
        CHECK(draw_legend(t, &which));
        CHECK(tt_text_format(t, "</g>\n"));
    }
    return svg_end(t);
}

static tt_status write_feedback_picture(app *a, const results *r) {
    tt_text text = new_text(a);
    tt_status status = draw_feedback(&text, r);
    if (status == TT_OK) {
        status = tt_file_write(a->ctx, path_of(given.out, "feedback.svg"), text.data, text.size);
    }
    tt_text_free(&text);
    return status;
}

/* Nothing where no such arm has run. */
static tt_status feedback_part(page *p, const results *r) {
    if (sample_of(r, place_of_arm("reads"), "sampled", "accuracy").n == 0) { return TT_OK; }
    CHECK(heading(p, "create", "Learning from feedback: create reflection"));
    CHECK(paragraph(p, "From a base of which %.0f %% of the documents show the student attempts, feedback "
                       "or solutions. Right after reading: of the base, behind the solution; of methods that "
                       "refine, their second answers. Out of domain: five numbers a question, never seen in "
                       "training.", 100 * READS_SHARE));
    CHECK(feedback_table(p, r, "create", "reads_grpo"));
    CHECK(feedback_pictures(p, r, "create"));
    CHECK(heading(p, "keep", "Learning from feedback: keep or destroy it"));
    CHECK(paragraph(p, "%d further steps from the student of ThinkTuning above.", given.steps));
    CHECK(feedback_table(p, r, "keep", "keep_grpo"));
    return feedback_pictures(p, r, "keep");
}

/* ---- ablations: one factor at a time, against "thinktune" ---- */
static tt_status ablation_row(page *p, const results *r, int at, const char *what) {
    sample s = sample_of(r, at, "sampled", "accuracy");
    if (s.n == 0) { return TT_OK; }
    CHECK(cell(p, "%s", what));
    CHECK(mean_cell(p, &s, 3, ""));
    CHECK(difference_cells(p, r, at, place_of_arm("thinktune")));
    s = sample_of(r, at, "sampled", "reflection_rate");
    CHECK(mean_cell(p, &s, 3, ""));
    s = sample_of(r, at, "sampled", "correction_rate");
    CHECK(mean_cell(p, &s, 3, ""));
    CHECK(reflects_cell(p, r, at));
    return row_end(p);
}

static tt_status ablations(page *p, const results *r) {
    static const char *const parts[] = {"shaping", "mask", "share", "schedule", "quality", "teacher"};
    static const char *const headings[] = {
        "one factor changed", "accuracy T = 1", "less ThinkTuning's",   "p",
        "reflection",         "correction",     "reflects and corrects"};
    size_t k;
    int i;
    CHECK(table_begin(p, headings, 7));
    CHECK(ablation_row(p, r, place_of_arm("thinktune"),
                       "ThinkTuning (shaping released, mask whole, 25 % linear, frozen base)"));
    for (k = 0; k < sizeof parts / sizeof *parts; k++) {
        for (i = 0; i < N_ARMS; i++) {
            char what[160];
            if (strcmp(arms[i].part, parts[k]) != 0) { continue; }
            snprintf(what, sizeof what, "%s: %s", parts[k], arms[i].what);
            CHECK(ablation_row(p, r, i, what));
        }
    }
    return table_end(p);
}

/* ---- rare markers: what the shaping formula predicts, and what happened ----
 * Of G responses one is guided; the others are right with probability a, the guided one with probability hit.
 * The expected push on the marker's logit is hit E[A w(p, A)] - (1 - hit) E[|A|]: a right guided response
 * counts with the shaping's factor, a wrong one falls back to the ordinary term. Above zero the marker rises,
 * below it falls. */
static double group_advantage(int rights, int own) {
    int n = given.generations;
    double mean = (double)rights / n, deviation = sqrt(n * mean * (1 - mean) / (n - 1));
    return deviation > 0 ? (own - mean) / deviation : 0;
}

static double predicted_push(double hit, double a, double p, tt_aas aas) {
    tt_grpo_config config = TT_INIT;
    int others = given.generations - 1, c, i;
    double push = 0;
    config.aas = aas;
    for (c = 0; c <= others; c++) {
        double ways = 1, up = group_advantage(c + 1, 1), down = group_advantage(c, 0);
        for (i = 0; i < c; i++) { ways = ways * (others - i) / (i + 1); }
        ways *= pow(a, c) * pow(1 - a, others - c);
        push -=
            hit * ways * tt_grpo_token_loss(&config, log(p), log(p), (double)NAN, up, TT_KIND_GUIDED).dloss;
        push -= (1 - hit) * ways *
                tt_grpo_token_loss(&config, log(p), log(p), (double)NAN, down, TT_KIND_GUIDED).dloss;
    }
    return push;
}

static tt_status rare_row(page *p, const results *r, int at) {
    int base = place_of_arm("base"), seed, n = 0, up = 0;
    tt_aas aas = (tt_aas)find_word(AAS_WORDS, arms[at].aas, strlen(arms[at].aas));
    sample push, after = sample_of(r, at, NULL, "marker_after");
    lifetime l = lifetime_of(r, at, "first_10");
    double median = median_start(&l), log_after = 0;
    push.n = 0;
    for (seed = 0; seed < given.seeds; seed++) {
        double hit = value_of(r, base, seed, "gate", "teacher_hit"),
               a = value_of(r, base, seed, "sampled", "accuracy"), x;
        if (!r->of[at][seed] || hit != hit) { continue; }
        x = predicted_push(hit, a, arms[at].marker, aas);
        push.values[push.n++] = x;
        up += x > 0;
        n++;
    }
    if (n == 0) { return TT_OK; }
    for (seed = 0; seed < after.n; seed++) { log_after += log(after.values[seed] + 1e-30) / after.n; }
    CHECK(cell(p, "%.0e", arms[at].marker));
    CHECK(cell(p, "%s", arms[at].aas));
    CHECK(mean_cell(p, &push, 4, "+"));
    CHECK(cell(p, "%d of %d", up, n));
    CHECK(cell(p, "%d of %d", l.started, l.n));
    CHECK(median > 0 ? cell(p, "%.0f", median) : cell(p, "not reached"));
    CHECK(cell(p, "%.1e", exp(log_after)));
    return row_end(p);
}

/* Where the push of `formula` changes its sign, for the mean base. */
static double break_even(const results *r) {
    sample hit = sample_of(r, place_of_arm("base"), "gate", "teacher_hit"),
           a = sample_of(r, place_of_arm("base"), "sampled", "accuracy");
    double low = log(1e-9), high = log(9e-3);
    while (high - low > 1e-3) {
        double middle = (low + high) / 2;
        if (predicted_push(mean_of(&hit), mean_of(&a), exp(middle), TT_AAS_FORMULA) > 0) {
            high = middle;
        } else {
            low = middle;
        }
    }
    return exp(low);
}

static tt_status rare_markers(page *p, const results *r) {
    static const char *const headings[] = {"marker's probability",
                                           "shaping",
                                           "predicted push",
                                           "predicted to rise",
                                           "passed 10 % in 40 steps",
                                           "median rollouts",
                                           "probability after, geometric mean"};
    int i;
    CHECK(
        paragraph(p,
                  "The marker is set to a given probability in the student, the teacher guides one response "
                  "in eight for 40 steps. Prediction, from the base's accuracy and its hit as teacher alone: "
                  "hit E[A w] - (1 - hit) E[|A|] per guided response. With formula w = p / (p + 0.00025 A), "
                  "so that it should rise only above p = %.1e; with released w is near 1 for every small p.",
                  break_even(r)));
    CHECK(table_begin(p, headings, 7));
    for (i = 0; i < N_ARMS; i++) {
        if (arms[i].marker > 0) { CHECK(rare_row(p, r, i)); }
    }
    return table_end(p);
}

/* ---- the bases, and what was said ---- */
/* Rollouts until an arm's student passed 10 %, or that it never did. */
static tt_status start_cell(page *p, const results *r, const char *arm_name, int seed) {
    double first = arm_name ? value_of(r, place_of_arm(arm_name), seed, NULL, "first_10") : (double)NAN;
    double end = arm_name ? value_of(r, place_of_arm(arm_name), seed, NULL, "rollouts") : (double)NAN;
    if (first > 0) { return cell(p, "%.0f", first); }
    return end == end ? cell(p, "not in %.0f", end) : cell(p, "–");
}

static tt_status gate_row(page *p, const results *r, int at, int seed) {
    static const struct {
        const char *base, *grpo, *thinktune;
    } trained[] = {{"base", "grpo_tokens", "thinktune"},
                   {"base_low", "low_grpo", "low_thinktune"},
                   {"base_incoherent", "incoherent_grpo_tokens", "incoherent_thinktune_long"}};
    static const char *const keys[] = {"teacher_hit", "rescue_rate", "spoil_rate", "coherence"};
    int k, from;
    for (from = 0; from < 3 && strcmp(arms[at].name, trained[from].base) != 0; from++) { }
    CHECK(cell(p, "%s", arms[at].what));
    CHECK(cell(p, "%d", given.first_seed + seed));
    for (k = 0; k < 4; k++) { CHECK(cell(p, "%.3f", value_of(r, at, seed, "gate", keys[k]))); }
    CHECK(cell(p, "%.1e", value_of(r, at, seed, "gate", "leak")));
    CHECK(start_cell(p, r, from < 3 ? trained[from].grpo : NULL, seed));
    CHECK(start_cell(p, r, from < 3 ? trained[from].thinktune : NULL, seed));
    return row_end(p);
}

/* The higher the coherence of a base, the sooner reward alone can stumble on a reflection that is right. */
static tt_status gates(page *p, const results *r) {
    static const char *const headings[] = {"base",
                                           "seed",
                                           "teacher's hit",
                                           "rescues",
                                           "spoils",
                                           "coherence",
                                           "leak, mean",
                                           "GRPO reflects in 10 % after",
                                           "ThinkTuning after"};
    int i, seed;
    CHECK(table_begin(p, headings, 9));
    for (i = 0; i < N_ARMS; i++) {
        for (seed = 0; seed < given.seeds && arms[i].method == BASE; seed++) {
            if (r->of[i][seed]) { CHECK(gate_row(p, r, i, seed)); }
        }
    }
    return table_end(p);
}

static int has_run(const results *r, const char *part) {
    int i;
    for (i = 0; i < N_ARMS; i++) {
        if (strcmp(arms[i].part, part) == 0 && sample_of(r, i, "sampled", "accuracy").n > 0) { return 1; }
    }
    return 0;
}

static int jobs_done(const results *r, int *all) {
    int i, seed, done = 0;
    for (*all = 0, i = 0; i < N_ARMS; i++) {
        for (seed = 0; seed < given.seeds; seed++) {
            ++*all;
            done += r->of[i][seed] != NULL;
        }
    }
    return done;
}

static tt_status settings_of_study(app *a, page *p) {
    tt_text settings = new_text(a);
    double seconds = 0;
    int i;
    tt_status status = tt_file_read(a->ctx, path_of(given.out, "settings.txt"), &settings);
    for (i = 0; i < N_ARMS; i++) { seconds += given.seeds * work_of(&arms[i]); }
    if (status == TT_OK) { status = heading(p, "settings", "Settings"); }
    if (status == TT_OK) { status = html_settings(p->text, a->ctx, &settings, seconds); }
    tt_text_free(&settings);
    return status == TT_OK ? page_end(p->text) : status;
}

static tt_status main_parts(page *p, const results *r) {
    CHECK(main_table(p, r, "main"));
    if (p->html) { CHECK(html_terms(p->text, TERMS_RESULT, N_TERMS_RESULT)); }
    CHECK(claims(p, r));
    CHECK(heading(p, "budget", "The budget: how many rollouts until the student reflects by itself"));
    CHECK(budget_table(p, r));
    CHECK(pictures(p, r));
    CHECK(heading(p, "low", "Weaker bases, and bases of low coherence"));
    CHECK(main_table(p, r, "low"));
    CHECK(heading(p, "ablations", "Ablations"));
    CHECK(ablations(p, r));
    CHECK(heading(p, "rare", "Rare markers: shaping by formula and as released"));
    CHECK(rare_markers(p, r));
    CHECK(heading(p, "control", "Control: a task in which reflection cannot help"));
    CHECK(paragraph(p, "In guess no text can tell the answer: nobody is right more often than 0.75."));
    return main_table(p, r, "control");
}

#define LAST_COLUMNS "The last columns are the rollouts until the student's own reflection passed 10 %%."

static tt_status write_page(app *a, page *p, const results *r) {
    int all, done = jobs_done(r, &all);
    if (p->html) { CHECK(page_begin(p->text, "ThinkTuning, the study: feedback against reward alone")); }
    CHECK(paragraph(p,
                    "Task signs, %d seeds (%d .. %d, none left out), %d steps of %d prompts x %d responses; "
                    "%d of %d jobs are done. "
                    "Mean ± half of the 95 %% interval (Student's t over seeds); paired comparisons, p of "
                    "the exact sign-flip test (two-sided).%s",
                    given.seeds, given.first_seed, given.first_seed + given.seeds - 1, given.steps,
                    given.prompts, given.generations, done, all,
                    given.quick ? " THIS IS A QUICK RUN: ITS NUMBERS MEAN NOTHING." : ""));
    if (has_run(r, "main")) { CHECK(main_parts(p, r)); }
    CHECK(feedback_part(p, r));
    CHECK(heading(p, "before", "Before RL: can the base teach?"));
    if (!p->html) {
        CHECK(paragraph(p, "Hit: the teacher's final answer is right. Coherence: right answers after a "
                           "forced marker, the student "
                           "alone. Leak: probability of any word no student document holds. " LAST_COLUMNS));
    }
    CHECK(gates(p, r));
    if (p->html) { CHECK(html_terms(p->text, TERMS_GATE, N_TERMS_GATE)); }
    if (p->html) { CHECK(paragraph(p, LAST_COLUMNS)); }
    if (has_run(r, "main")) { CHECK(transcripts(p, r)); }
    return p->html ? settings_of_study(a, p) : TT_OK;
}

static tt_status write_study(app *a) {
    static results r;
    static const char *const names[] = {"table.md", "report.html"};
    tt_text text = new_text(a);
    tt_status status = read_results(a, &r, &text);
    int k;
    if (status == TT_OK) { status = tt_text_append(&text, "", 0); }
    if (status == TT_OK) {
        status = tt_file_write(a->ctx, path_of(given.out, "results.jsonl"), text.data, text.size);
    }
    for (k = 0; k < 2 && status == TT_OK; k++) {
        page p;
        p.text = &text;
        p.html = k;
        p.cells = 0;
        text.size = 0;
        status = write_page(a, &p, &r);
        if (status == TT_OK) {
            status = tt_file_write(a->ctx, path_of(given.out, "%s", names[k]), text.data, text.size);
        }
    }
    if (status == TT_OK && has_run(&r, "keep")) { status = write_feedback_picture(a, &r); }
    free_results(a, &r);
    tt_text_free(&text);
    return status;
}
