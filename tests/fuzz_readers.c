/* fuzz_readers.c - libFuzzer target: whatever bytes come, the readers answer with an object or an error text.
 * The first byte picks the reader, the rest is its input. Run by `make fuzz`. */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void trap_if(int bad) {
    if (bad) __builtin_trap();
}

/* A tokenizer that was accepted must encode any text, and decode gives that text back where all bytes are in it. */
static void fuzz_tokenizer(tt_context *ctx, const char *text, size_t size) {
    tt_tokenizer *tokenizer = tt_tokenizer_parse(ctx, text, size);
    tt_ids ids = TT_INIT;
    tt_text json = TT_INIT;
    ids.ctx = json.ctx = ctx;
    if (!tokenizer) return;
    trap_if(tt_encode(tokenizer, text, size, TT_SPECIAL_PARSE, &ids) != TT_OK);
    tt_decode(tokenizer, ids.data, ids.size, 0, &json);
    tt_text_free(&json);
    trap_if(tt_tokenizer_json(tokenizer, &json) != TT_OK);
    tt_text_free(&json);
    tt_ids_free(&ids);
    tt_tokenizer_destroy(tokenizer);
}

/* A config that was accepted is written and read again without an error. */
static void fuzz_config(tt_context *ctx, const char *text, size_t size) {
    tt_model_config config = TT_INIT, again = TT_INIT;
    tt_text json = TT_INIT;
    json.ctx = ctx;
    if (tt_model_config_parse(ctx, text, size, &config) != TT_OK) return;
    trap_if(tt_model_config_json(&config, &json) != TT_OK);
    trap_if(tt_model_config_parse(ctx, json.data, json.size, &again) != TT_OK);
    tt_text_free(&json);
}

static void fuzz_safetensors(tt_context *ctx, const char *text, size_t size) {
    const char *path = "build/fuzz.safetensors";
    tt_safetensors *file;
    int i;
    trap_if(tt_file_write(ctx, path, text, size) != TT_OK);
    file = tt_safetensors_open(ctx, path);
    if (!file) return;
    for (i = 0; i < tt_safetensors_count(file); i++) {
        size_t n = tt_safetensors_info_get(file, i).size;
        float *values = n > 0 && n < (1u << 20) ? (float *)tt_alloc(ctx, n, sizeof(float)) : NULL;
        if (values) tt_safetensors_read(file, i, values);
        tt_free(ctx, values, n, sizeof(float));
    }
    tt_safetensors_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    tt_context *ctx = size > 0 ? tt_create(NULL) : NULL;
    const char *text = (const char *)bytes + 1;
    if (!ctx) return 0;
    size--;
    switch (bytes[0] % 4) {
    case 0: tt_json_free(ctx, tt_json_parse(ctx, text, size)); break;
    case 1: fuzz_tokenizer(ctx, text, size); break;
    case 2: fuzz_config(ctx, text, size); break;
    default: fuzz_safetensors(ctx, text, size); break;
    }
    tt_destroy(ctx);
    return 0;
}
