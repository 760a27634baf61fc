#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#include "tt_test.h"

/* ---- helpers ---- */

typedef struct source_state { const char *text; size_t left, step; } source_state;

static size_t source_read(void *user, char *bytes, size_t n) {
    source_state *s = (source_state *)user;
    if (s->step && n > s->step) n = s->step;
    if (n > s->left) n = s->left;
    memcpy(bytes, s->text, n);
    s->text += n;
    s->left -= n;
    return n;
}

/* step: bytes of one read, 0 = as many as wanted. */
static tt_tokenizer *train(tt_context *ctx, const tt_tokenizer_desc *desc, const char *text, size_t size, size_t step) {
    source_state state;
    tt_text_source source;
    state.text = text;
    state.left = size;
    state.step = step;
    source.read = source_read;
    source.user = &state;
    return tt_tokenizer_train(ctx, desc, source);
}

static tt_tokenizer_desc plain(tt_pretokenizer kind, int vocab_size) {
    tt_tokenizer_desc desc = TT_INIT;
    desc.pretokenizer = kind;
    desc.vocab_size = vocab_size;
    return desc;
}

static void check_ids(const tt_tokenizer *t, tt_context *ctx, const char *text, size_t size, tt_special special, const int *ids, size_t n) {
    tt_ids out = TT_INIT;
    size_t i;
    out.ctx = ctx;
    TT_CHECK_OK(ctx, tt_encode(t, text, size, special, &out));
    if (!TT_CHECK_INT(out.size, n)) printf("  text: %.60s\n", text);
    for (i = 0; i < n && i < out.size; i++) TT_CHECK_INT(out.data[i], ids[i]);
    tt_ids_free(&out);
}

static void check_round_trip(const tt_tokenizer *t, tt_context *ctx, const char *text, size_t size, tt_special special) {
    tt_ids ids = TT_INIT;
    tt_text back = TT_INIT;
    ids.ctx = back.ctx = ctx;
    TT_CHECK_OK(ctx, tt_encode(t, text, size, special, &ids));
    TT_CHECK_OK(ctx, tt_decode(t, ids.data, ids.size, 0, &back));
    TT_CHECK_INT(back.size, size);
    TT_CHECK_BYTES(back.data, text, back.size < size ? back.size : size);
    tt_ids_free(&ids);
    tt_text_free(&back);
}

static tt_text read_data(tt_context *ctx, const char *path) {
    tt_text text = TT_INIT;
    text.ctx = ctx;
    TT_CHECK_OK(ctx, tt_file_read(ctx, path, &text));
    return text;
}

static size_t json_ids(const tt_json *list, int *ids, size_t limit) {
    size_t n = 0;
    for (list = list ? list->child : NULL; list && n < limit; list = list->next) ids[n++] = (int)list->number;
    return n;
}

#define HEAD "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"},"
#define BYTES_HEAD \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},\"decoder\":{\"type\":\"ByteLevel\"},"
#define SMALL_MODEL \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"ab\":3,\"\xc4\xa0\":4,\"\xc4\xa0" "a\":5},\"merges\":[\"a a\",[\"a\",\"b\"],\"\xc4\xa0 a\"]}}"

/* ---- the published vocabulary ---- */

TT_TEST(gpt2_matches_its_vectors) {
    static int ids[4096];
    const char *tokenizer = tt_test_data("tokenizers/gpt2/tokenizer.json"), *inputs = tt_test_data("vectors/multilingual/inputs.json");
    const char *baseline = tt_test_data("vectors/multilingual/openai-community__gpt2.json");
    const char *swift = tt_test_data("vectors/swift/gpt2_encoded_tokens.json"), *distil = tt_test_data("vectors/swift/tokenizer_tests.json");
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t;
    tt_text file;
    tt_json *a, *b;
    const tt_json *item, *list;
    size_t n;
    if (!tokenizer || !inputs || !baseline || !swift || !distil) { tt_destroy(ctx); TT_SKIP("no GPT-2 files under TT_DATA"); }
    t = tt_tokenizer_load(ctx, tokenizer);
    if (!t) printf("  %s\n", tt_error(ctx));
    TT_REQUIRE(t != NULL);
    TT_CHECK_INT(tt_vocab_size(t), 50257);
    TT_CHECK_INT(tt_token_id(t, " the"), 262);
    TT_CHECK_INT(tt_token_id(t, "<|endoftext|>"), 50256);
    TT_CHECK_INT(tt_token_id(t, "no such token"), -1);
    TT_CHECK(tt_token_is_special(t, 50256) && !tt_token_is_special(t, 262) && !tt_token_is_special(t, -1) && !tt_token_is_special(t, 50257));

    file = read_data(ctx, inputs);
    a = tt_json_parse(ctx, file.data, file.size);
    tt_text_free(&file);
    file = read_data(ctx, baseline);
    b = tt_json_parse(ctx, file.data, file.size);
    tt_text_free(&file);
    TT_REQUIRE(a != NULL && b != NULL);
    list = tt_json_get(a, "inputs");
    TT_CHECK(list && list->length > 20);
    for (item = list->child; item; item = item->next) {
        const tt_json *text = tt_json_get(item, "text"), *entry = tt_json_get(tt_json_get(b, "entries"), tt_json_text(item, "id", ""));
        if (!TT_CHECK(text && entry)) continue;
        n = json_ids(tt_json_get(entry, "input_ids"), ids, 4096);
        check_ids(t, ctx, text->string, text->length, TT_SPECIAL_PARSE, ids, n);
        check_round_trip(t, ctx, text->string, text->length, TT_SPECIAL_PARSE);
    }
    tt_json_free(ctx, a);
    tt_json_free(ctx, b);

    file = read_data(ctx, swift);
    a = tt_json_parse(ctx, file.data, file.size);
    tt_text_free(&file);
    TT_REQUIRE(a != NULL);
    n = json_ids(tt_json_get(a, "token_ids"), ids, 4096);
    TT_CHECK(n > 100);
    check_ids(t, ctx, tt_json_text(a, "text", ""), strlen(tt_json_text(a, "text", "")), TT_SPECIAL_PARSE, ids, n);
    tt_json_free(ctx, a);

    file = read_data(ctx, distil);
    a = tt_json_parse(ctx, file.data, file.size);
    tt_text_free(&file);
    list = tt_json_get(a, "distilgpt2");
    TT_REQUIRE(list != NULL && list->length > 10);
    for (item = list->child; item; item = item->next) {
        const tt_json *text = tt_json_get(item, "input");
        n = json_ids(tt_json_get(tt_json_get(item, "encoded"), "input_ids"), ids, 4096);
        check_ids(t, ctx, text->string, text->length, TT_SPECIAL_PARSE, ids, n);
    }
    tt_json_free(ctx, a);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

TT_TEST(gpt2_matches_llamacpp) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    const char *tokenizer = tt_test_data("tokenizers/gpt2/tokenizer.json"), *in = tt_test_data("vectors/llamacpp/ggml-vocab-gpt-2.gguf.inp");
    const char *out = tt_test_data("vectors/llamacpp/ggml-vocab-gpt-2.gguf.out");
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t;
    tt_text texts, lines;
    char *text, *line;
    int records = 0;
    if (!tokenizer || !in || !out) { tt_destroy(ctx); TT_SKIP("no GPT-2 files under TT_DATA"); }
    t = tt_tokenizer_load(ctx, tokenizer);
    TT_REQUIRE(t != NULL);
    texts = read_data(ctx, in);
    lines = read_data(ctx, out);
    text = texts.data;
    line = lines.data;
    while (*line) {
        int ids[512];
        size_t n = 0;
        char *end = strstr(text, mark), *stop = strchr(line, '\n');
        if (!end) end = texts.data + texts.size;
        while (line < stop && n < 512) {
            ids[n++] = (int)strtol(line, &line, 10);
            while (*line == ' ') line++;
        }
        if (stop == line && n == 1 && ids[0] == 0 && end == text) n = 0;
        check_ids(t, ctx, text, (size_t)(end - text), TT_SPECIAL_PARSE, ids, n);
        records++;
        line = stop + 1;
        if (!*end) break;
        text = end + sizeof mark - 1;
    }
    TT_CHECK(records > 40);
    tt_text_free(&texts);
    tt_text_free(&lines);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

/* ---- merging ---- */

TT_TEST(merges_by_rank_then_leftmost) {
    static const int five[] = {2, 2, 0}, mixed[] = {3, 4, 3}, spaces[] = {4, 4, 2};
    static const char json[] = HEAD SMALL_MODEL;
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t = tt_tokenizer_parse(ctx, json, sizeof json - 1);
    tt_ids ids = TT_INIT;
    if (!t) printf("  %s\n", tt_error(ctx));
    TT_REQUIRE(t != NULL);
    check_ids(t, ctx, "aaaaa", 5, TT_SPECIAL_PARSE, five, 3);
    check_ids(t, ctx, "ab ab", 5, TT_SPECIAL_PARSE, mixed, 3);
    check_ids(t, ctx, "  aa", 4, TT_SPECIAL_PARSE, spaces, 3);
    ids.ctx = ctx;
    TT_CHECK_INT(tt_encode(t, "aabxb", 5, TT_SPECIAL_PARSE, &ids), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "byte 0x78 at offset 3");
    TT_CHECK_INT(ids.size, 0);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

/* The same word, short by plain search and long by heap: "ab" * n merges alike. */
TT_TEST(long_pieces_merge_like_short_ones) {
    static const char json[] = BYTES_HEAD "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abab\":4,\"bc\":5,\"cc\":6,\"ccc\":7},"
                               "\"merges\":[\"b c\",\"c c\",\"a b\",\"ab ab\",\"cc c\"]}}";
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t = tt_tokenizer_parse(ctx, json, sizeof json - 1);
    unsigned round;
    TT_REQUIRE(t != NULL);
    for (round = 0; round < 300; round++) {
        char text[TTI_SHORT_PIECE];
        int32_t ids[TTI_SHORT_PIECE];
        int32_t heap[TTI_SHORT_PIECE];
        size_t n = 1 + round % TTI_SHORT_PIECE, long_n = n, i;
        for (i = 0; i < n; i++) {
            text[i] = (char)('a' + tt_random(5, round, i) % 3);
            ids[i] = t->byte_id[(unsigned char)text[i]];
        }
        memcpy(heap, ids, n * sizeof *ids);
        TT_CHECK_OK(ctx, tti_merge_long(t, &t->workers[0], heap, &long_n));
        n = tti_merge_short(t, ids, n);
        TT_CHECK_INT(long_n, n);
        TT_CHECK_BYTES(heap, ids, n * sizeof *ids);
    }
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

TT_TEST(a_million_equal_letters) {
    const size_t n = 1000000;
    char *text = (char *)malloc(n);
    int kind;
    TT_REQUIRE(text != NULL);
    memset(text, 'a', n);
    for (kind = TT_PRETOKENIZE_GPT2; kind <= TT_PRETOKENIZE_BYTES; kind++) {
        tt_context *ctx = tt_create(NULL);
        tt_tokenizer_desc desc = plain((tt_pretokenizer)kind, 300);
        double start = tt_clock();
        tt_tokenizer *t = train(ctx, &desc, text, n, 0);
        TT_REQUIRE(t != NULL);
        check_round_trip(t, ctx, text, n, TT_SPECIAL_PARSE);
        TT_CHECK(tt_clock() - start < 10.0);         /* a quadratic loop takes hours; 0.3 s is usual, sanitizers are slower */
        tt_tokenizer_destroy(t);
        tt_destroy(ctx);
    }
    free(text);
}

TT_TEST(ignore_merges_takes_a_known_piece_whole) {
    static const char merged[] = HEAD "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]}}";
    static const char whole[] = HEAD "\"model\":{\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]}}";
    static const int two[] = {0, 1}, one[] = {2};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t = tt_tokenizer_parse(ctx, merged, sizeof merged - 1);
    TT_REQUIRE(t != NULL);
    check_ids(t, ctx, "ab", 2, TT_SPECIAL_PARSE, two, 2);
    tt_tokenizer_destroy(t);
    t = tt_tokenizer_parse(ctx, whole, sizeof whole - 1);
    TT_REQUIRE(t != NULL);
    check_ids(t, ctx, "ab", 2, TT_SPECIAL_PARSE, one, 1);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

/* ---- added tokens ---- */

TT_TEST(added_tokens) {
    static const char json[] = HEAD "\"added_tokens\":["
        "{\"id\":9,\"content\":\"<b>\",\"special\":true},{\"id\":10,\"content\":\"<b>a\",\"special\":false},"
        "{\"id\":11,\"content\":\"<l>\",\"special\":true,\"lstrip\":true,\"rstrip\":true},"
        "{\"id\":12,\"content\":\"a<b>a\",\"special\":false,\"normalized\":true}],"
        "\"model\":{\"vocab\":{\"a\":0,\"<\":1,\"b\":2,\">\":3,\"l\":4,\"\xc4\xa0\":5},\"merges\":[]}}";
    static const int longest[] = {10, 9, 2}, strip[] = {0, 11, 0}, text[] = {1, 2, 3, 2}, level[] = {0, 10};
    static const int32_t decode[] = {9, 0, 10};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t = tt_tokenizer_parse(ctx, json, sizeof json - 1);
    tt_ids ids = TT_INIT;
    tt_text out = TT_INIT;
    ids.ctx = out.ctx = ctx;
    if (!t) printf("  %s\n", tt_error(ctx));
    TT_REQUIRE(t != NULL);
    check_ids(t, ctx, "<b>a<b>b", 8, TT_SPECIAL_PARSE, longest, 3);
    check_ids(t, ctx, "a  <l>  a", 9, TT_SPECIAL_PARSE, strip, 3);
    check_ids(t, ctx, "<b>b", 4, TT_SPECIAL_TEXT, text, 4);
    check_ids(t, ctx, "<b>a", 4, TT_SPECIAL_REFUSE, longest, 1);          /* an added token that is not special */
    check_ids(t, ctx, "a<b>a", 5, TT_SPECIAL_PARSE, level, 2);            /* those not normalized are cut first */
    TT_CHECK_OK(ctx, tt_ids_append(&ids, decode, 1));
    TT_CHECK_INT(tt_encode(t, "ab<b>b", 6, TT_SPECIAL_REFUSE, &ids), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), "special token <b> at offset 2");
    TT_CHECK_INT(ids.size, 1);
    TT_CHECK_OK(ctx, tt_decode(t, decode, 3, 0, &out));
    TT_CHECK_STR(out.data, "<b>a<b>a");
    out.size = 0;
    TT_CHECK_OK(ctx, tt_decode(t, decode, 3, 1, &out));
    TT_CHECK_STR(out.data, "a<b>a");
    ids.data[0] = 7;                                                      /* a hole in the ids */
    TT_CHECK_INT(tt_decode(t, ids.data, 1, 0, &out), TT_ERR_ARG);
    TT_CHECK_STR(out.data, "a<b>a");
    tt_ids_free(&ids);
    tt_text_free(&out);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

/* ---- training ---- */

/* Sennrich's example, worked by hand: e+s (9), es+t (9), l+o (7), lo+w (7), ... */
TT_TEST(training_by_hand) {
    static const char text[] = "low low low low low lower lower newest newest newest newest newest newest widest widest widest";
    static const char *const special[] = {"<pad>", "<end>"};
    tt_tokenizer_desc desc = plain(TT_PRETOKENIZE_GPT2, 21);
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer *t;
    desc.special_tokens = special;
    desc.n_special_tokens = 2;
    t = train(ctx, &desc, text, sizeof text - 1, 0);
    if (!t) printf("  %s\n", tt_error(ctx));
    TT_REQUIRE(t != NULL);
    TT_CHECK_INT(tt_token_id(t, "<end>"), 1);
    TT_CHECK(tt_token_is_special(t, 1) && !tt_token_is_special(t, 2));
    TT_CHECK_INT(tt_token_id(t, "<"), 2);            /* < > a d e i l n o p r s t w of text and special tokens, then the space */
    TT_CHECK_INT(tt_token_id(t, "w"), 15);
    TT_CHECK_INT(tt_token_id(t, " "), 16);
    TT_CHECK_INT(tt_token_id(t, "es"), 17);          /* e+s and s+t occur 9 times: the smaller ids win */
    TT_CHECK_INT(tt_token_id(t, "est"), 18);
    TT_CHECK_INT(tt_token_id(t, "lo"), 19);
    TT_CHECK_INT(tt_token_id(t, "low"), 20);
    TT_CHECK_INT(tt_vocab_size(t), 21);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

/* The word list of the text is the same however it arrives. */
TT_TEST(training_does_not_depend_on_chunks) {
    static const size_t steps[] = {0, 1, 3, 7, 64};
    tt_context *ctx = tt_create(NULL);
    tt_text text = TT_INIT, first = TT_INIT, json = TT_INIT;
    int kind, i;
    text.ctx = first.ctx = json.ctx = ctx;
    for (i = 0; i < 600; i++) {
        uint64_t r = tt_random(3, 1, (uint64_t)i);
        TT_CHECK_OK(ctx, tt_text_format(&text, "%s%sw%d'll \xe6\x97\xa5\xe6\x9c\xac\xe3\x80\x80 x%d", r & 1 ? " " : "\n", r & 2 ? "  \t" : "", (int)(r % 37), (int)(r % 11)));
    }
    for (kind = TT_PRETOKENIZE_GPT2; kind <= TT_PRETOKENIZE_BYTES; kind++) {
        tt_tokenizer_desc desc = plain((tt_pretokenizer)kind, 400);
        for (i = 0; i < 5; i++) {
            tt_tokenizer *t = train(ctx, &desc, text.data, text.size, steps[i]);
            TT_REQUIRE(t != NULL);
            json.size = 0;
            TT_CHECK_OK(ctx, tt_tokenizer_json(t, i ? &json : &first));
            if (i) TT_CHECK_STR(json.data, first.data);
            check_round_trip(t, ctx, text.data, text.size, TT_SPECIAL_PARSE);
            tt_tokenizer_destroy(t);
        }
        first.size = 0;
    }
    tt_text_free(&text);
    tt_text_free(&first);
    tt_text_free(&json);
    tt_destroy(ctx);
}

TT_TEST(whitespace_words_become_tokens) {
    static const char text[] = "What is 12+30? The answer: 42. What's 7+7? 14, of course.";
    static const char *const special[] = {"<end>"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer_desc desc = plain(TT_PRETOKENIZE_WHITESPACE, 100000);
    tt_tokenizer *t;
    tt_ids ids = TT_INIT;
    ids.ctx = ctx;
    desc.min_frequency = 1;
    desc.special_tokens = special;
    desc.n_special_tokens = 1;
    t = train(ctx, &desc, text, sizeof text - 1, 0);
    TT_REQUIRE(t != NULL);
    TT_CHECK_OK(ctx, tt_encode(t, text, sizeof text - 1, TT_SPECIAL_PARSE, &ids));
    TT_CHECK_INT(ids.size, 11);
    TT_CHECK(tt_token_id(t, "What") > 0 && tt_token_id(t, " 12+30?") > 0 && tt_token_id(t, " What's") > 0);
    tt_tokenizer_destroy(t);
    t = train(ctx, &desc, "go <end> <end> <end>", 20, 0);        /* no merge may spell a special token */
    TT_REQUIRE(t != NULL);
    ids.size = 0;
    TT_CHECK_OK(ctx, tt_encode(t, "<end>", 5, TT_SPECIAL_TEXT, &ids));
    TT_CHECK(ids.size > 1);
    check_round_trip(t, ctx, "<end>", 5, TT_SPECIAL_TEXT);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

TT_TEST(all_bytes_encode_and_return) {
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer_desc desc = plain(TT_PRETOKENIZE_GPT2, 300);
    tt_tokenizer *t;
    char text[600];
    unsigned round;
    size_t i;
    desc.all_bytes = 1;
    t = train(ctx, &desc, "the cat and the hat and the bat", 31, 0);
    TT_REQUIRE(t != NULL);
    for (round = 0; round < 300; round++) {
        if (tt_test_now()->failures) break;
        for (i = 0; i < sizeof text; i++) text[i] = (char)tt_random(9, round, i);
        check_round_trip(t, ctx, text, round * 2, TT_SPECIAL_PARSE);
    }
    check_round_trip(t, ctx, "", 0, TT_SPECIAL_PARSE);
    tt_tokenizer_destroy(t);
    t = train(ctx, &desc, "", 0, 0);
    TT_REQUIRE(t != NULL);
    TT_CHECK_INT(tt_vocab_size(t), 256);
    check_round_trip(t, ctx, "any text", 8, TT_SPECIAL_PARSE);
    tt_tokenizer_destroy(t);
    tt_destroy(ctx);
}

static void check_train_error(tt_context *ctx, const tt_tokenizer_desc *desc, const char *part) {
    tt_tokenizer *t = train(ctx, desc, "some text", 9, 0);
    TT_CHECK(t == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_ARG);
    TT_CHECK_CONTAINS(tt_error(ctx), part);
    tt_tokenizer_destroy(t);
}

TT_TEST(training_errors_name_the_field) {
    static const char *const bad[][2] = {{"<a>", "<a>"}, {"x", ""}, {"", "<a>"}, {"\xff\xfe", "<a>"}};
    static const char *const reason[] = {"there twice", "the name of a byte", "empty", "no valid UTF-8"};
    tt_context *ctx = tt_create(NULL);
    tt_text_source none;
    tt_tokenizer_desc desc = plain(TT_PRETOKENIZE_GPT2, 5);
    int i;
    check_train_error(ctx, &desc, "vocab_size is 5, expected at least 7");
    desc = plain(TT_PRETOKENIZE_GPT2, -1);
    check_train_error(ctx, &desc, "vocab_size is -1");
    desc = plain((tt_pretokenizer)77, 50);
    check_train_error(ctx, &desc, "pretokenizer is 77");
    desc = plain(TT_PRETOKENIZE_GPT2, 50);
    desc.min_frequency = -2;
    check_train_error(ctx, &desc, "min_frequency is -2");
    desc.min_frequency = 0;
    desc.n_special_tokens = 2;
    check_train_error(ctx, &desc, "special_tokens is NULL");
    for (i = 0; i < 4; i++) {
        desc.special_tokens = bad[i];
        check_train_error(ctx, &desc, reason[i]);
    }
    none.read = NULL;
    none.user = NULL;
    TT_CHECK(tt_tokenizer_train(ctx, NULL, none) == NULL);
    TT_CHECK_CONTAINS(tt_error(ctx), "text.read is NULL");
    tt_destroy(ctx);
}

/* ---- files ---- */

TT_TEST(save_and_load_keep_everything) {
    static const char *const special[] = {"<end>", "<\xc3\xa9\">"};
    static const char text[] = "a cat, a bat; 'tis the cat's hat <end> \xff\x00 it";
    const char *path = tt_test_tmp("tokenizer.json");
    tt_context *ctx = tt_create(NULL);
    tt_text a = TT_INIT, b = TT_INIT;
    int kind;
    a.ctx = b.ctx = ctx;
    for (kind = TT_PRETOKENIZE_GPT2; kind <= TT_PRETOKENIZE_BYTES; kind++) {
        tt_tokenizer_desc desc = plain((tt_pretokenizer)kind, 280);
        tt_tokenizer *t, *u;
        desc.special_tokens = special;
        desc.n_special_tokens = 2;
        desc.all_bytes = 1;
        t = train(ctx, &desc, text, sizeof text - 1, 0);
        TT_REQUIRE(t != NULL);
        TT_CHECK_OK(ctx, tt_tokenizer_save(t, path));
        u = tt_tokenizer_load(ctx, path);
        if (!u) printf("  %s\n", tt_error(ctx));
        TT_REQUIRE(u != NULL);
        a.size = b.size = 0;
        TT_CHECK_OK(ctx, tt_tokenizer_json(t, &a));
        TT_CHECK_OK(ctx, tt_tokenizer_json(u, &b));
        TT_CHECK_STR(a.data, b.data);
        TT_CHECK_INT(tt_token_id(u, special[1]), 1);
        check_round_trip(u, ctx, text, sizeof text - 1, TT_SPECIAL_PARSE);
        tt_tokenizer_destroy(t);
        tt_tokenizer_destroy(u);
    }
    TT_CHECK(tt_tokenizer_load(ctx, "build/tmp/no such file") == NULL);
    TT_CHECK_INT(tt_error_status(ctx), TT_ERR_IO);
    tt_text_free(&a);
    tt_text_free(&b);
    tt_destroy(ctx);
}

TT_TEST(what_is_not_supported_is_named) {
    static const char *const cases[][2] = {
        {"[]", "no JSON object"},
        {"{\"normalizer\":{\"type\":\"NFKC\"}}", "normalizer is NFKC"},
        {"{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}}", "type is Lowercase"},
        {"{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"}}", "normalizer is Prepend"},
        {"{\"truncation\":{}}", "truncation is an object"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\"}}", "post_processor is BertProcessing"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\"}}", "TemplateProcessing: single is missing"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}}", "SpecialToken is an object"},
        {"{}", "decoder is missing"},
        {"{\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "pre_tokenizer is Metaspace"},
        {"{\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"ByteLevel\"}]}}", "add_prefix_space is missing"},
        {"{\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{}]}}", "individual_digits is missing"},
        {"{\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"},{}]}}", "type is Punctuation"},
        {"{\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"}},{}]}}", "Split by x+"},
        {HEAD "\"model\":{\"type\":\"WordPiece\"}}", "model.type is WordPiece"},
        {HEAD "\"model\":{\"dropout\":0.1}}", "model.dropout is a number"},
        {HEAD "\"model\":{\"byte_fallback\":true}}", "model.byte_fallback is true"},
        {HEAD "\"model\":{\"end_of_word_suffix\":\"</w>\"}}", "model.end_of_word_suffix is </w>"},
        {HEAD "\"model\":{}}", "model.vocab is missing"},
        {HEAD "\"model\":{\"vocab\":{}}}", "model.merges is missing"},
        {HEAD "\"model\":{\"unk_token\":\"a\",\"vocab\":{\"a\":0},\"merges\":[]}}", "model.unk_token is a"},
        {HEAD "\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "model.vocab: id is -1"},
        {HEAD "\"model\":{\"vocab\":{\"a\":1e9},\"merges\":[]}}", "model.vocab: id is 1000000000"},
        {HEAD "\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "want the id 0"},
        {HEAD "\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "there twice"},
        {HEAD "\"model\":{\"vocab\":{\"\":0},\"merges\":[]}}", "is empty"},
        {HEAD "\"model\":{\"vocab\":{\"a b\":0},\"merges\":[]}}", "not written in GPT-2's byte characters"},
        {HEAD "\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "merge 0 names \"b\""},
        {HEAD "\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "merge 0 gives a token that is not"},
        {HEAD "\"model\":{\"vocab\":{\"a\":0},\"merges\":[5]}}", "merge 0 is neither"},
        {HEAD "\"added_tokens\":[{\"id\":1,\"content\":\"\"}]}", "content"},
        {HEAD "\"added_tokens\":[{\"id\":1,\"content\":\"x\"},{\"id\":1,\"content\":\"y\"}]}", "occurs twice"},
    };
    tt_context *ctx = tt_create(NULL);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        tt_tokenizer *t = tt_tokenizer_parse(ctx, cases[i][0], strlen(cases[i][0]));
        TT_CHECK(t == NULL);
        TT_CHECK_INT(tt_error_status(ctx), TT_ERR_FILE);
        TT_CHECK_CONTAINS(tt_error(ctx), cases[i][1]);
        tt_tokenizer_destroy(t);
    }
    tt_destroy(ctx);
}

static void try_json(tt_context *ctx, const char *json, size_t size) {
    tt_tokenizer *t;
    tt_error_clear(ctx);
    t = tt_tokenizer_parse(ctx, json, size);
    if (t) {
        tt_ids ids = TT_INIT;
        ids.ctx = ctx;
        tt_encode(t, "ab aab<b> a", 11, TT_SPECIAL_PARSE, &ids);
        tt_ids_free(&ids);
        tt_tokenizer_destroy(t);
    } else {
        TT_CHECK(tt_error(ctx)[0] != 0);
    }
}

TT_TEST(damaged_files_are_errors) {
    static const char json[] = HEAD "\"added_tokens\":[{\"id\":9,\"content\":\"<b>\",\"special\":true}]," SMALL_MODEL;
    tt_test_memory memory = tt_test_memory_none();
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    char copy[sizeof json];
    size_t n, bit;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    for (n = 0; n < sizeof json - 1; n++) {
        tt_tokenizer *t = tt_tokenizer_parse(ctx, json, n);
        TT_CHECK(t == NULL);
        tt_tokenizer_destroy(t);
    }
    for (bit = 0; bit < (sizeof json - 1) * 8; bit++) {
        memcpy(copy, json, sizeof json);
        copy[bit / 8] = (char)(copy[bit / 8] ^ (1 << bit % 8));
        try_json(ctx, copy, sizeof json - 1);
    }
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
}

/* ---- memory ---- */

static tt_status small_life(tt_context *ctx) {
    static const char text[] = "the cat and the hat and the bat, and a very long piece: 0123456789012345678901234567890123456789012345678901234567890123";
    static const char *const special[] = {"<end>"};
    tt_tokenizer_desc desc = plain(TT_PRETOKENIZE_GPT2, 60);
    tt_tokenizer *t, *u;
    tt_ids ids = TT_INIT;
    tt_text json = TT_INIT, out = TT_INIT;
    tt_status status;
    ids.ctx = json.ctx = out.ctx = ctx;
    desc.special_tokens = special;
    desc.n_special_tokens = 1;
    t = train(ctx, &desc, text, sizeof text - 1, 0);
    if (!t) return tt_error_status(ctx);
    status = tt_encode(t, text, sizeof text - 1, TT_SPECIAL_PARSE, &ids);
    if (status != TT_OK) TT_CHECK_INT(ids.size, 0);
    if (status == TT_OK) status = tt_decode(t, ids.data, ids.size, 0, &out);
    if (status == TT_OK) TT_CHECK_STR(out.data, text);
    if (status == TT_OK) status = tt_tokenizer_save(t, tt_test_tmp("small.json"));
    if (status == TT_OK) {
        u = tt_tokenizer_load(ctx, tt_test_tmp("small.json"));
        if (!u) status = tt_error_status(ctx);
        tt_tokenizer_destroy(u);
    }
    tt_tokenizer_destroy(t);
    tt_ids_free(&ids);
    tt_text_free(&json);
    tt_text_free(&out);
    return status;
}

TT_TEST(every_allocation_may_fail) {
    tt_test_memory memory = tt_test_memory_none();
    long n, calls;
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    desc.n_threads = 1;
    desc.allocator = tt_test_allocator(&memory);
    ctx = tt_create(&desc);
    TT_REQUIRE(ctx != NULL);
    TT_CHECK_OK(ctx, small_life(ctx));
    calls = memory.calls;
    tt_destroy(ctx);
    TT_CHECK_NO_LEAK(memory);
    TT_CHECK(calls > 30);
    for (n = 1; n <= calls; n++) {
        tt_status status = TT_ERR_MEM;
        memory = tt_test_memory_none();
        memory.fail_at = n;
        desc.allocator = tt_test_allocator(&memory);
        ctx = tt_create(&desc);
        if (ctx) status = small_life(ctx);
        TT_CHECK_INT(status, TT_ERR_MEM);
        tt_destroy(ctx);
        TT_CHECK_NO_LEAK(memory);
    }
}

TT_MAIN(gpt2_matches_its_vectors, gpt2_matches_llamacpp, merges_by_rank_then_leftmost, long_pieces_merge_like_short_ones,
        a_million_equal_letters, ignore_merges_takes_a_known_piece_whole, added_tokens, training_by_hand,
        training_does_not_depend_on_chunks, whitespace_words_become_tokens, all_bytes_encode_and_return,
        training_errors_name_the_field, save_and_load_keep_everything, what_is_not_supported_is_named,
        damaged_files_are_errors, every_allocation_may_fail)
