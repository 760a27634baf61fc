/* page.h - reports as one self-contained HTML file that needs neither scripts nor a network: head and styles,
 * texts whose checks and answers are marked, terms with their meaning, and plots as inline SVG. Light and
 * dark, wide and narrow; no meaning hangs on a colour alone. */
#ifndef PAGE_H
#define PAGE_H

/* ---- text ---- */
static tt_status html_bytes(tt_text *t, const char *text, size_t size) {
    tt_status status = TT_OK;
    size_t i;
    for (i = 0; i < size && status == TT_OK; i++) {
        const char *as = text[i] == '<' ? "&lt;" : text[i] == '>' ? "&gt;" : text[i] == '&' ? "&amp;" : NULL;
        status = as ? tt_text_append(t, as, strlen(as)) : tt_text_append(t, text + i, 1);
    }
    return status;
}

/* Text as it is, with <, > and & written as entities. */
static tt_status html(tt_text *t, const char *text) { return html_bytes(t, text, strlen(text)); }

/* ---- marks in what a model says ----
 * A calculation ("3 x 4 = 12", "+2 =2 -7 =-5") is right or wrong; so is a verdict ("need 5 . no") on the last
 * result; the answer is what follows "answer" or "####" on its line, or stands in \boxed{}; a reflection
 * begins with the first of some words. Whatever is not understood stays unmarked. */
typedef struct reader {
    const char *at;
    double sum, term;       /* the calculation so far is sum + term   */
    double result, goal;    /* of the last calculation; what is needed */
    int begun, calculates;  /* a number stands there; and an operation or a sign with it */
    int unclear;            /* brackets and the like: to the next word or sentence       */
    int has_result, has_goal, wants_goal, reflects;
    char operation;         /* before the next number, 0 = none       */
} reader;

static void forget_calculation(reader *r) {
    r->begun = r->calculates = 0;
    r->operation = 0;
}

static void take_number(reader *r, double value) {
    if (r->wants_goal) {
        r->goal = value;
        r->has_goal = 1;
        r->wants_goal = 0;
        return;
    }
    r->calculates = r->begun && r->operation;
    if (!r->calculates) {
        r->sum = 0;
        r->term = value;
    } else if (r->operation == '*' || r->operation == '/') {
        r->term = r->operation == '*' ? r->term * value : r->term / value;
    } else {
        r->sum += r->term;
        r->term = r->operation == '-' ? -value : value;
    }
    r->begun = 1;
    r->operation = 0;
}

/* Digits, with commas between thousands, and a fraction: their end or NULL. rounding: half the last place. */
static const char *number_end(const char *at, double *value, double *rounding) {
    double place = 1;
    const char *from = at;
    *value = 0;
    *rounding = 1e-9;
    while (ttc_is_digit(*at) ||
           (*at == ',' && at > from && ttc_is_digit(at[1]) && ttc_is_digit(at[2]) && ttc_is_digit(at[3]))) {
        if (*at != ',') { *value = *value * 10 + (*at - '0'); }
        at++;
    }
    if (at == from) { return NULL; }
    if (*at != '.' || !ttc_is_digit(at[1])) { return at; }
    for (at++; ttc_is_digit(*at); at++) {
        place /= 10;
        *value += place * (*at - '0');
    }
    *rounding = place * 0.5001;
    return at;
}

/* "= 12" at r->at: is it what was calculated? */
static tt_status mark_result(reader *r, tt_text *t) {
    double value, rounding;
    const char *from = r->at, *at = from + 1, *end;
    int negative;
    while (*at == ' ' || *at == '$') { at++; }
    negative = *at == '-';
    end = number_end(at + negative, &value, &rounding);
    if (!end) {
        forget_calculation(r);
        return html_bytes(t, r->at++, 1);
    }
    if (negative) { value = -value; }
    r->at = end;
    if (!r->calculates || r->unclear) { CHECK(html_bytes(t, from, (size_t)(end - from))); }
    if (r->calculates && !r->unclear) {
        int right = fabs(value - r->sum - r->term) <= rounding;
        CHECK(tt_text_format(t, "<b class=\"%s\">", right ? "ok" : "bad"));
        CHECK(html_bytes(t, from, (size_t)(end - from)));
        CHECK(tt_text_format(t, "</b>"));
    }
    r->operation = 0;
    r->wants_goal = r->unclear = 0;
    take_number(r, value);
    r->result = value;
    r->has_result = 1;
    return TT_OK;
}

static int word_is(const char *word, size_t size, const char *const *list) {
    size_t i;
    for (; *list; list++) {
        for (i = 0; i < size && (*list)[i] && (word[i] | 32) == (*list)[i]; i++) { }
        if (i == size && !(*list)[i]) { return 1; }
    }
    return 0;
}

/* From here to the end of the line, or to the sentence's: the answer. */
static tt_status mark_answer(reader *r, tt_text *t, size_t size) {
    const char *end = r->at + size;
    while (*end && *end != '\n' && *end != '}' && !(*end == '.' && !ttc_is_digit(end[1]))) { end++; }
    CHECK(tt_text_format(t, "<b class=\"answer\">"));
    CHECK(html_bytes(t, r->at, (size_t)(end - r->at)));
    r->at = end;
    r->wants_goal = 0;
    forget_calculation(r);
    return tt_text_format(t, "</b>");
}

static tt_status mark_word(reader *r, tt_text *t) {
    static const char *const turns[] = {"wait", "check", "verify", "mentor", "mentors", "hmm", NULL};
    static const char *const answers[] = {"answer", NULL}, *const goals[] = {"need", "said", NULL},
                             *const times[] = {"x", NULL};
    static const char *const yes[] = {"yes", NULL}, *const no[] = {"no", NULL};
    const char *word = r->at, *class_name = NULL;
    size_t size = 0;
    r->unclear = 0;
    while (ttc_is_letter(word[size])) { size++; }
    if (word_is(word, size, answers) && !r->wants_goal) { return mark_answer(r, t, size); }
    if (word_is(word, size, times) && r->begun) {
        r->operation = '*';
    } else {
        forget_calculation(r);
    }
    if (r->has_goal && r->has_result && (word_is(word, size, yes) || word_is(word, size, no))) {
        class_name = (r->goal == r->result) == word_is(word, size, yes) ? "ok" : "bad";
        r->has_goal = 0;
    }
    if (!r->reflects && word_is(word, size, turns)) {
        r->reflects = 1;
        class_name = "turn";
    }
    r->wants_goal = word_is(word, size, goals) || (r->wants_goal && word_is(word, size, answers));
    r->at += size;
    if (class_name) { CHECK(tt_text_format(t, "<b class=\"%s\">", class_name)); }
    CHECK(html_bytes(t, word, size));
    return class_name ? tt_text_format(t, "</b>") : TT_OK;
}

static tt_status mark_number(reader *r, tt_text *t) {
    double value, rounding;
    const char *from = r->at;
    int sign = *from == '-' || *from == '+';
    r->at = number_end(from + sign, &value, &rounding);
    if (sign && r->begun && !r->wants_goal) {
        r->operation = *from;
    } else if (*from == '-') {
        value = -value;
    }
    take_number(r, value);
    r->calculates |= sign;
    return html_bytes(t, from, (size_t)(r->at - from));
}

/* One piece of text: a number, a word, a result, or a byte of something else. */
static tt_status mark_next(reader *r, tt_text *t) {
    char c = *r->at;
    int sign = c == '-' || c == '+';
    if (c == '=') { return mark_result(r, t); }
    if (ttc_is_letter(c)) { return mark_word(r, t); }
    if (ttc_is_digit(c) || (sign && ttc_is_digit(r->at[1]))) { return mark_number(r, t); }
    if (strncmp(r->at, "####", 4) == 0) { return mark_answer(r, t, 4); }
    if (strncmp(r->at, "\\boxed{", 7) == 0) { return mark_answer(r, t, 7); }
    if (r->begun && (sign || c == '*' || c == '/')) {
        r->operation = c;
    } else if (c != ' ' && c != '$') {
        r->unclear = strchr(".,:;\n", c) == NULL;
        forget_calculation(r);
    }
    return html_bytes(t, r->at++, 1);
}

static tt_status html_marked(tt_text *t, const char *text) {
    reader r = TT_INIT;
    for (r.at = text; *r.at;) { CHECK(mark_next(&r, t)); }
    return TT_OK;
}

/* ---- the page ---- */
/* Colours by who it is about: --c. They differ in lightness too, and lines in their dashes. */
static const char plot_style[] =
    ".base,.k2{--c:#5b6470}.grpo,.k1{--c:#b84a00}.thinktune,.k0{--c:#0062a3}.formula,.k5{--c:#00735a}"
    ".luffy,.k6{--c:#9b3675}.off,.k4{--c:#8a6100}.sft,.k3{--c:#4b3fa8}.k7{--c:#2b2b2b}"
    "svg{font:12px sans-serif}svg text{fill:#333}svg .grid{stroke:#ddd}svg .end{fill:var(--c);stroke:none}"
    "svg .line{fill:none;stroke:var(--c,#777);stroke-width:2.5}svg .seed{stroke-width:1;opacity:.4}"
    "svg .grpo,svg .k1,svg .k3{stroke-dasharray:7 3}svg .formula,svg .k2,svg .k5{stroke-dasharray:2 3}"
    "svg .luffy,svg .k4,svg .k6{stroke-dasharray:8 3 2 3}svg .off,svg .k7{stroke-dasharray:1 5}"
    "@media(prefers-color-scheme:dark){"
    ".base,.k2{--c:#aab2bd}.grpo,.k1{--c:#ff9a57}.thinktune,.k0{--c:#5db7f0}.formula,.k5{--c:#3fd0a8}"
    ".luffy,.k6{--c:#e796c4}.off,.k4{--c:#e3b341}.sft,.k3{--c:#b3a8ff}.k7{--c:#e8e8e8}"
    "svg text{fill:#ccc}svg .grid{stroke:#3a3f47}}";

static const char page_style[] =
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1a1a1a;--soft:#5b6470;--rule:#d6dae0;--box:#f5f7f9;"
    "--teacher:#fdf1d6;--edge:#b07900;--ok:#0062a3;--bad:#b00020;--answer:#e2ecf7}"
    "@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e4e7eb;--soft:#a2abb6;--rule:#363c44;"
    "--box:#1d2126;--teacher:#3a2f14;--edge:#e3b341;--ok:#7cc4f5;--bad:#ff8d8d;--answer:#22364a}}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72em;margin:1.5em auto;padding:0 1em;"
    "color:var(--fg);background:var(--bg)}"
    "h1{line-height:1.2}h2{margin-top:2em;border-top:1px solid var(--rule);padding-top:.8em}"
    "p,dl{max-width:48em}a{color:inherit}nav a{margin-right:1em;white-space:nowrap}"
    "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}"
    "td,th{border-bottom:1px solid var(--rule);padding:.3em .7em;text-align:right;vertical-align:bottom}"
    "td{white-space:nowrap}td:first-child,th:first-child{text-align:left;white-space:normal;min-width:8em}"
    "dl,figcaption{font-size:.9em;color:var(--soft)}dd{margin:0 0 .2em}"
    "dt{float:left;clear:left;font-weight:bold;margin-right:.5em}dt::after{content:':'}"
    "figure{margin:0}svg{width:100%;height:auto;display:block}"
    ".plots{display:grid;gap:1em;grid-template-columns:repeat(auto-fit,minmax(min(100%,24em),1fr))}"
    ".side{display:grid;gap:.5em;grid-template-columns:repeat(auto-fit,minmax(min(100%,19em),1fr))}"
    ".asked{margin:1.2em 0 .4em;font-weight:bold}.name{color:var(--c,inherit);font-weight:bold}"
    ".said{background:var(--box);border-left:3px solid var(--c,var(--soft))}"
    ".said{padding:.3em .7em;margin:0 0 .4em}"
    ".teacher{background:var(--teacher);border-left:3px dashed var(--edge)}"
    ".who{display:block;font-size:.85em;color:var(--soft)}"
    ".said .text{white-space:pre-wrap;overflow-wrap:anywhere}.text b{font-weight:normal}"
    ".text .ok,.yes{color:var(--ok)}.text .ok::after,.yes::before{content:'\\2713'}"
    ".text .bad,.no{color:var(--bad)}.text .bad::after,.no::before{content:'\\2717'}"
    ".text .bad{text-decoration:underline wavy}.text .turn{font-weight:bold;border-bottom:2px dotted}"
    ".text .answer{font-weight:bold;background:var(--answer);border-radius:3px}"
    "summary{cursor:pointer;padding:.15em 0}details details{margin-left:1em}"
    "pre{overflow-x:auto;background:var(--box);padding:.7em}"
    "@media(max-width:40em){td,th{padding:.3em .35em;font-size:.85em}h1{font-size:1.5em}}";

static tt_status page_begin(tt_text *t, const char *title) {
    CHECK(tt_text_format(
        t,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>%s</title>\n<style>",
        title));
    CHECK(tt_text_append(t, page_style, sizeof page_style - 1));
    CHECK(tt_text_append(t, plot_style, sizeof plot_style - 1));
    return tt_text_format(t, "</style>\n<h1>%s</h1>\n", title);
}

static tt_status page_end(tt_text *t) { return tt_text_format(t, "</html>\n"); }

static tt_status page_heading(tt_text *t, const char *id, const char *text) {
    return tt_text_format(t, "<h2 id=\"%s\">%s</h2>\n", id, text);
}

/* ---- terms ---- */
typedef struct term {
    const char *name, *meaning;
} term;
static const term terms[] = {
    {"accuracy",
     "share of the held-out questions whose final answer is right; at T = 1 of one sampled response each, "
     "greedy of the most likely one."},
    {"attempts", "share of the responses that attempt an answer before they check it."},
    {"first try",
     "share whose first answer, before any reflection, is right. What a student gains beyond it, it gains by "
     "checking."},
    {"works first", "share of the responses that work before they answer: there is nothing to correct."},
    {"reflection",
     "share of the responses that look at their own answer again (\"wait\", \"check\"), whatever comes of "
     "it."},
    {"correction", "of the responses whose first answer is wrong, the share that ends right."},
    {"spoil", "of the responses whose first answer is right, the share that ends wrong."},
    {"length", "tokens of a response, its end token included."},
    {"shift", "accuracy on questions out of domain, harder in one respect than any in training."},
    {"hit",
     "share of the teacher's continuations that end in the right answer. Feedback that is often wrong is "
     "punished, not learned."},
    {"rescues", "of the wrong attempts, the share that the teacher's continuation puts right."},
    {"spoils", "of the right attempts, the share that the teacher's continuation ends wrong."},
    {"not blank", "share of the feedback that says anything."},
    {"coherence",
     "the marker of a reflection is put behind an attempt and the base goes on alone: share that ends right. "
     "High coherence lets reward alone stumble on reflection early."},
    {"leak",
     "probability that an attempt holds a word that no student's document holds, summed over its places: how "
     "near the base is to reflecting by accident."}
};

/* The meanings of so many of these, under the table that has them as headings. */
static tt_status html_terms(tt_text *t, int first, int n) {
    int i;
    CHECK(tt_text_format(t, "<dl>\n"));
    for (i = first; i < first + n; i++) {
        CHECK(tt_text_format(t, "<dt>%s</dt><dd>%s</dd>\n", terms[i].name, terms[i].meaning));
    }
    return tt_text_format(t, "</dl>\n");
}

enum { TERMS_RESULT = 0, N_TERMS_RESULT = 8, TERMS_GATE = 9, N_TERMS_GATE = 6 };

/* ---- transcripts ---- */
static tt_status html_question(tt_text *t, const char *question) {
    CHECK(tt_text_format(t, "<p class=\"asked\">"));
    CHECK(html(t, question));
    return tt_text_format(t, " ?</p>\n");
}

/* What one of them said. who: the class of its colour; verdict: 1 right, 0 wrong, -1 not judged. */
static tt_status html_said(tt_text *t, const char *who, const char *label, const char *text, int verdict,
                           const char *note) {
    static const char *const verdicts[] = {"", " <b class=\"no\"> wrong</b>", " <b class=\"yes\"> right</b>"};
    while (*text == '\n' || *text == ' ') { text++; }
    CHECK(tt_text_format(
        t, "<div class=\"said %s\"><span class=\"who\"><span class=\"name\">%s</span>%s %s</span>", who,
        label, verdicts[verdict + 1], note));
    CHECK(tt_text_format(t, "<span class=\"text\">"));
    CHECK(*text ? html_marked(t, text) : tt_text_format(t, "<i>nothing</i>"));
    return tt_text_format(t, "</span></div>\n");
}

static tt_status html_marks(tt_text *t) {
    return tt_text_format(
        t, "<p>In the texts <span class=\"text\"><b class=\"turn\">wait</b></span> begins a reflection, "
           "<span class=\"text\"><b class=\"ok\">=4</b></span> is a check that holds, "
           "<span class=\"text\"><b class=\"bad\">=5</b></span> one that does not, and "
           "<span class=\"text\"><b class=\"answer\">answer 4</b></span> an answer, the last one being "
           "judged. Boxes with a dashed edge are the teacher's words, all others the student's.</p>\n");
}

/* What a run again needs and costs. The time is the expected one: a measured one would change the bytes. */
static tt_status html_settings(tt_text *t, tt_context *ctx, const tt_text *settings, double seconds) {
    CHECK(tt_text_format(
        t,
        "<p>thinktuning.h " TT_VERSION
        ", %s kernels. Expected time of such a run: %s on two quiet cores; the "
        "seconds that each step took here are in timings.jsonl beside this page. The same settings and "
        "kernels give the same bytes again.</p>\n<pre>",
        tt_kernel(ctx), clock_text(seconds)));
    CHECK(html_bytes(t, settings->data ? settings->data : "", settings->size));
    return tt_text_format(t, "</pre>\n");
}

/* ---- plots: lines over one axis, with their legend under it, each a picture of its own ---- */
enum { PLOT_W = 400, PLOT_H = 250, PLOT_X = 46, PLOT_Y = 30, PLOT_WIDTH = 340, PLOT_HEIGHT = 170 };
typedef struct plot {
    const char *title, *x_label;  /* title with its unit */
    double x_low, x_high, y_high; /* y from 0 */
    int logarithmic;              /* x doubles from tick to tick, else round numbers */
} plot;

/* 1, 2 or 5 times a power of ten: the smallest that cuts span into at most n steps. */
static double round_step(double span, int n) {
    double step = pow(10, floor(log10(span / n)));
    if (span / step > 5 * n) { return 10 * step; }
    if (span / step > 2 * n) { return 5 * step; }
    return span / step > n ? 2 * step : step;
}

static double plot_x(const plot *p, double x) {
    double share = p->logarithmic ? log(x / p->x_low) / log(p->x_high / p->x_low)
                                  : (x - p->x_low) / (p->x_high - p->x_low);
    return PLOT_X + PLOT_WIDTH * fmin(fmax(share, 0), 1);
}

static double plot_y(const plot *p, double y) { return PLOT_Y + PLOT_HEIGHT * (1 - y / p->y_high); }

static tt_status plot_x_tick(tt_text *t, const plot *p, double x) {
    return tt_text_format(t, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n", plot_x(p, x),
                          PLOT_Y + PLOT_HEIGHT + 16, x);
}

static tt_status plot_axes(tt_text *t, const plot *p) {
    double step = round_step(p->y_high, 5), x, y;
    int digits = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
    CHECK(tt_text_format(t, "<text x=\"8\" y=\"16\" font-weight=\"bold\">%s</text>\n", p->title));
    for (y = 0; y <= p->y_high * 1.0001; y += step) {
        CHECK(tt_text_format(t, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", PLOT_X,
                             PLOT_X + PLOT_WIDTH, plot_y(p, y), plot_y(p, y)));
        CHECK(tt_text_format(t, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.*f</text>\n", PLOT_X - 6,
                             plot_y(p, y) + 4, digits, y));
    }
    for (x = p->x_low; p->logarithmic && x <= p->x_high * 1.0001; x *= 4) { CHECK(plot_x_tick(t, p, x)); }
    step = p->logarithmic ? 1 : fmax(1, round_step(p->x_high - p->x_low, 6));
    for (x = p->x_low; !p->logarithmic && x <= p->x_high * 1.0001; x += step) { CHECK(plot_x_tick(t, p, x)); }
    return tt_text_format(t, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", PLOT_X + PLOT_WIDTH,
                          PLOT_Y + PLOT_HEIGHT + 32, p->x_label);
}

/* A line of the legend; place 0, 1, ... */
static tt_status plot_legend(tt_text *t, int place, int columns, const char *class_name, const char *label) {
    int x = PLOT_X + place % columns * (PLOT_WIDTH / columns),
        y = PLOT_Y + PLOT_HEIGHT + 46 + place / columns * 17;
    CHECK(tt_text_format(t,
                         "<g class=\"%s\"><line class=\"line %s\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>",
                         class_name, class_name, x, x + 26, y, y));
    return tt_text_format(t, "<text x=\"%d\" y=\"%d\">%s</text></g>\n", x + 32, y + 4, label);
}

/* The picture's outside; label: what a reader who does not see it has to know. */
static tt_status svg_begin(tt_text *t, int width, int height, const char *label) {
    CHECK(tt_text_format(
        t, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
        width, height));
    CHECK(html(t, label));
    return tt_text_format(t, "\">\n");
}

/* Of a picture that stands alone, in a file of its own. */
static tt_status svg_style(tt_text *t) {
    CHECK(tt_text_format(t, "<style>svg{background:#fff}@media(prefers-color-scheme:dark){"
                         "svg{background:#14171b}}"));
    return tt_text_format(t, "%s</style>\n", plot_style);
}

static tt_status svg_end(tt_text *t) { return tt_text_format(t, "</svg>\n"); }
#endif
