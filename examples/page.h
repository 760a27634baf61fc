/* page.h - reports as one self-contained HTML file: head, text, transcripts, and pictures as inline SVG. */
#ifndef PAGE_H
#define PAGE_H

/* Text as it is, with <, > and & written as entities. */
static tt_status html(tt_text *t, const char *text) {
    tt_status status = TT_OK;
    for (; *text && status == TT_OK; text++) {
        const char *as = *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '&' ? "&amp;" : NULL;
        status = as ? tt_text_append(t, as, strlen(as)) : tt_text_append(t, text, 1);
    }
    return status;
}
/* One line of a transcript; right: 1, 0, or -1 where that is not the question. */
static tt_status html_said(tt_text *t, const char *kind, const char *label, const char *text, int right) {
    CHECK(tt_text_format(t, "<p class=\"%s\"><i>%s</i>", kind, label));
    CHECK(html(t, text));
    return tt_text_format(t, "%s</p>\n", right < 0 ? "" : right ? " <b class=\"yes\">right</b>" : " <b class=\"no\">wrong</b>");
}
static tt_status page_begin(tt_text *t, const char *title, const char *heading) {
    static const char style[] =
        "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111}"
        "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ddd;padding:.3em .6em;text-align:right}td:first-child,th:first-child{text-align:left}"
        "p{margin:.2em 0;white-space:pre-wrap}p i{display:inline-block;width:6em;color:#666}.q{margin-top:1em;font-weight:bold}.s{background:#eff6ff}.t{background:#fef3c7}"
        ".yes{color:#15803d}.no{color:#b91c1c}svg{width:100%;height:auto}";
    CHECK(tt_text_format(t, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>%s</title><style>", title));
    CHECK(tt_text_append(t, style, sizeof style - 1));
    return tt_text_format(t, "</style>\n<h1>%s</h1>\n", heading);
}
#endif
