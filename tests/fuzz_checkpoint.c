/* fuzz_checkpoint.c - model files from anyone: a safetensors file that opens must be readable, a config.json that is
 * accepted must be written and read again to the same config.
 *
 *     make fuzz                                                          (libFuzzer, needs clang)
 *     cc -std=c99 -O1 -g -fsanitize=address,undefined -DTT_FUZZ_MAIN tests/fuzz_checkpoint.c -o build/fuzz -lm
 *     build/fuzz 100000 1                                                (mutations, seed) */
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char fuzz_path[] = "build/tmp/fuzz.safetensors";

static void fuzz_safetensors(tt_context *ctx, const uint8_t *data, size_t size) {
    FILE *out = fopen(fuzz_path, "wb");        /* no sync: the loop is fast */
    tt_safetensors *file;
    int i;
    if (!out) abort();
    if (fwrite(data, 1, size, out) != size) abort();
    fclose(out);
    file = tt_safetensors_open(ctx, fuzz_path);
    if (!file && tt_error(ctx)[0] == 0) abort();
    for (i = 0; file && i < tt_safetensors_count(file); i++) {
        tt_safetensors_info info = tt_safetensors_info_get(file, i);
        float *values = (float *)malloc(info.size * sizeof *values + 1);
        if (info.size > size || tt_safetensors_find(file, info.name) != i) abort();
        if (values) tt_safetensors_read(file, i, values);
        free(values);
    }
    if (file) tt_safetensors_metadata(file, "state");
    tt_safetensors_close(file);
    if (tt_state_load(ctx, fuzz_path, NULL, 0, NULL) != TT_OK && tt_error(ctx)[0] == 0) abort();
}
static void fuzz_config(tt_context *ctx, const char *json, size_t size) {
    tt_model_config a, b;
    tt_text once = TT_INIT, twice = TT_INIT;
    once.ctx = twice.ctx = ctx;
    if (tt_model_config_parse(ctx, json, size, &a) != TT_OK) {
        if (tt_error(ctx)[0] == 0) abort();
        return;
    }
    if (tt_model_config_json(&a, &once) != TT_OK || tt_model_config_parse(ctx, once.data, once.size, &b) != TT_OK) abort();
    if (tt_model_config_json(&b, &twice) != TT_OK || strcmp(once.data, twice.data) != 0) abort();
    tt_text_free(&once);
    tt_text_free(&twice);
}
/* Bytes that begin with '{' are a config.json, all others a safetensors file. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tt_context *ctx = tt_create(NULL);
    if (!ctx) return 0;
    tt_make_dirs(ctx, "build/tmp");
    if (size && data[0] == '{') { fuzz_config(ctx, (const char *)data, size); }
    else { fuzz_safetensors(ctx, data, size); }
    if (tt_memory_get(ctx).current_bytes > ((size_t)1 << 24)) abort();
    tt_destroy(ctx);
    return 0;
}

#ifdef TT_FUZZ_MAIN
static const char header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"state\":\"{\\\"a\\\":1}\"},\"a.w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[16,24]},\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]}}";
static const char *const configs[] = {
    "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64},"
    "\"eos_token_id\":[1,2],\"attention_bias\":true}",
    "{\"model_type\":\"smollm3\",\"vocab_size\":96,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"no_rope_layers\":[1,0,1,0],\"layer_types\":[\"full_attention\"]}",
    "{\"model_type\":\"gpt2\",\"vocab_size\":96,\"n_embd\":64,\"n_layer\":4,\"n_head\":4,\"n_inner\":null,\"n_positions\":32,\"eos_token_id\":9}",
};
static size_t sample(char *out, int which) {
    size_t n = sizeof header - 1;
    if (which < 3) { memcpy(out, configs[which], strlen(configs[which])); return strlen(configs[which]); }
    memset(out, 0, 8 + n + 32);
    out[0] = (char)(n & 255);
    out[1] = (char)(n >> 8);
    memcpy(out + 8, header, n);
    return 8 + n + 32;
}
int main(int argc, char **argv) {
    static const char pieces[] = "0123456789-.e[]{},:\"truefalsnull\\";
    long runs = argc > 1 ? atol(argv[1]) : 10000, run;
    tt_rng rng = TT_INIT;
    char bytes[2048];
    rng.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (run = 0; run < runs; run++) {
        size_t n = sample(bytes, (int)(run % 6));
        int edits = run < 6 ? 0 : 1 + tt_rng_below(&rng, 6);
        while (edits-- > 0) {
            size_t at = (size_t)tt_rng_below(&rng, (int)n);
            int kind = tt_rng_below(&rng, 5);
            if (kind == 0) { bytes[at] = (char)(bytes[at] ^ (1 << tt_rng_below(&rng, 8))); }
            else if (kind == 1) { bytes[at] = pieces[tt_rng_below(&rng, (int)sizeof pieces - 1)]; }
            else if (kind == 2 && n > 10) { memmove(bytes + at, bytes + at + 1, n - at - 1); n--; }
            else if (kind == 3 && n < sizeof bytes) { memmove(bytes + at + 1, bytes + at, n - at); bytes[at] = pieces[tt_rng_below(&rng, (int)sizeof pieces - 1)]; n++; }
            else if (kind == 4 && tt_rng_below(&rng, 8) == 0 && at > 10) { n = at; }
        }
        if (n > 9 && bytes[8] == '{' && tt_rng_below(&rng, 2)) { bytes[0] = (char)((n - 40) & 255); bytes[1] = (char)((n - 40) >> 8); }
        LLVMFuzzerTestOneInput((const uint8_t *)bytes, n);
    }
    printf("%ld mutations\n", runs);
    return 0;
}
#endif
