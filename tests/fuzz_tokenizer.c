/* fuzz_tokenizer.c - tokenizer.json and ranks from anyone. What loads must encode, decode, also token by token with
 * the same result, and load again after saving.
 *
 *     make fuzz                                                          (libFuzzer, needs clang)
 *     cc -std=c99 -O1 -g -fsanitize=address,undefined -DTT_FUZZ_MAIN tests/fuzz_tokenizer.c -o build/fuzz -lm
 *     build/fuzz 100000 1                                                (mutations, seed) */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void decode_by_token(const tt_tokenizer *t, const tt_ids *ids, const tt_text *whole) {
    tt_decoder d = TT_INIT;
    tt_text out = TT_INIT;
    size_t i;
    out.ctx = ids->ctx;
    d.tokenizer = t;
    for (i = 0; i < ids->size; i++) {
        if (tt_decoder_push(&d, ids->data[i], &out) != TT_OK) abort();
    }
    if (tt_decoder_end(&d, &out) != TT_OK) abort();
    if (out.size != whole->size || (out.size && memcmp(out.data, whole->data, out.size) != 0)) abort();
    tt_text_free(&out);
}

/* The bytes are a tokenizer.json or ranks; those behind the first NUL, if there is one, are the text to encode. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tt_context *ctx = tt_create(NULL);
    const char *json = (const char *)data, *nul = size ? (const char *)memchr(json, 0, size) : NULL;
    const char *text = nul ? nul + 1 : json;
    size_t json_size = nul ? (size_t)(nul - json) : size, text_size = nul ? size - json_size - 1 : size;
    tt_tokenizer *t, *again;
    tt_ids ids = TT_INIT;
    tt_text back = TT_INIT;
    int special;
    if (!ctx) return 0;
    ids.ctx = back.ctx = ctx;
    t = tt_tokenizer_parse(ctx, json, json_size);
    if (!t && tt_error(ctx)[0] == 0) abort();
    for (special = TT_SPECIAL_PARSE; t && special <= TT_SPECIAL_REFUSE; special++) {
        ids.size = back.size = 0;
        if (tt_encode(t, text, text_size, (tt_special)special, &ids) != TT_OK) {
            if (ids.size != 0) abort();
            continue;
        }
        if (tt_decode(t, ids.data, ids.size, 0, &back) != TT_OK) abort();
        decode_by_token(t, &ids, &back);
    }
    if (t) {
        ids.size = back.size = 0;
        if (tt_encode_prompt(t, text, text_size / 2, text + text_size / 2, text_size - text_size / 2, &ids) != TT_OK && ids.size != 0) abort();
        if (tt_decode(t, ids.data, ids.size, 0, &back) != TT_OK) abort();
        back.size = 0;
        if (tt_tokenizer_json(t, &back) != TT_OK) abort();
        again = tt_tokenizer_parse(ctx, back.data, back.size);
        if (!again || tt_vocab_size(again) != tt_vocab_size(t)) abort();
        tt_tokenizer_destroy(again);
    }
    tt_tokenizer_destroy(t);
    tt_ids_free(&ids);
    tt_text_free(&back);
    tt_destroy(ctx);
    return 0;
}

#ifdef TT_FUZZ_MAIN
static const char sample[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<b>\",\"special\":true,\"lstrip\":true},{\"id\":8,\"content\":\"<c>\",\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"ignore_merges\":false,\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"ab\":3,\"\xc4\xa0\":4,\"\xc4\xa0" "a\":5,\"<b>\":9},"
    "\"merges\":[\"a a\",[\"a\",\"b\"],\"\xc4\xa0 a\"]}}\0aab <b> ab'll  <c>aaaa ab \xff e\xcc\x81\xcc\xa3 \xe1\x84\x80\xe1\x85\xa1";

int main(int argc, char **argv) {
    long runs = argc > 1 ? atol(argv[1]) : 10000, run;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (run = 0; run < runs; run++) {
        uint8_t bytes[2 * sizeof sample];
        size_t size = sizeof sample - 1;
        int edits, k;
        tt_rng rng;
        rng.seed = seed;
        rng.stream = (uint64_t)run;
        rng.index = 0;
        memcpy(bytes, sample, size);
        edits = tt_rng_below(&rng, 4);
        for (k = 0; k < edits; k++) {
            size_t at = (size_t)tt_rng_below(&rng, (int)size), from = (size_t)tt_rng_below(&rng, (int)size), n;
            switch (tt_rng_below(&rng, 4)) {
            case 0: bytes[at] = (uint8_t)(bytes[at] ^ (1 << tt_rng_below(&rng, 8))); break;
            case 1: bytes[at] = bytes[from]; break;
            case 2:                                  /* a piece copied to another place */
                n = (size_t)tt_rng_below(&rng, 24);
                if (at + n <= size && from + n <= size) memmove(bytes + at, bytes + from, n);
                break;
            default:                                 /* a piece left out */
                n = (size_t)tt_rng_below(&rng, 8);
                if (at + n < size) {
                    memmove(bytes + at, bytes + at + n, size - at - n);
                    size -= n;
                }
            }
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
    printf("%ld runs\n", runs);
    return 0;
}
#endif
