/* fuzz_checkpoint.c - model files from anyone: a safetensors file that opens must be readable, a training state that is
 * refused must have changed nothing, a config.json that is accepted must be written and read again to the same config, and
 * a directory with the bytes as any one of its files loads, or is refused with a reason, without a leak.
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

static char fuzz_dir[64];      /* a model directory of this process */

static const char tiny_config[] =
    "{\"model_type\":\"llama\",\"vocab_size\":3,\"hidden_size\":2,\"intermediate_size\":2,\"num_hidden_layers\":1,\"num_attention_heads\":1,"
    "\"max_position_embeddings\":4,\"tie_word_embeddings\":true}";
static const char tiny_adapter[] = "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":2,\"target_modules\":[\"q_proj\"]}";
static const char tiny_index[] = "{\"weight_map\":{\"a\":\"model-1.safetensors\"}}";

static const char *fuzz_path(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", fuzz_dir, name);
    return path;
}
static void put_file(const char *name, const void *bytes, size_t size) {        /* no sync: the loop is fast */
    FILE *out = fopen(fuzz_path(name), "wb");
    if (!out || fwrite(bytes, 1, size, out) != size) abort();
    fclose(out);
}
static void check(tt_context *ctx, int failed) {
    if (failed && tt_error(ctx)[0] == 0) abort();      /* a refusal says why */
    tt_error_clear(ctx);
}

/* All or nothing. */
static void fuzz_state(tt_context *ctx) {
    static const float before[4] = {1, 2, 3, 4};
    static const int shape[1] = {4};
    float after[4];
    tt_named w;
    tt_text json = TT_INIT;
    int failed;
    json.ctx = ctx;
    w.name = "w";
    w.tensor = tt_tensor_create(ctx, TT_F32, 1, shape, "w");
    if (!w.tensor || tt_tensor_set(w.tensor, before) != TT_OK) abort();
    failed = tt_state_load(ctx, fuzz_path("model.safetensors"), &w, 1, &json) != TT_OK;
    check(ctx, failed);
    if (tt_tensor_get(w.tensor, after) != TT_OK || (failed && (json.size || memcmp(before, after, sizeof after) != 0))) abort();
    tt_text_free(&json);
    tt_tensor_destroy(w.tensor);
}
static void fuzz_safetensors(tt_context *ctx, const uint8_t *data, size_t size) {
    tt_safetensors *file;
    int i;
    put_file("model.safetensors", data, size);
    file = tt_safetensors_open(ctx, fuzz_path("model.safetensors"));
    check(ctx, !file);
    for (i = 0; file && i < tt_safetensors_count(file); i++) {
        tt_safetensors_info info = tt_safetensors_info_get(file, i);
        float *values = (float *)malloc(info.size * sizeof *values + 1);
        if (info.size > size || tt_safetensors_find(file, info.name) != i) abort();
        if (values) tt_safetensors_read(file, i, values);
        free(values);
    }
    if (file) tt_safetensors_metadata(file, "state");
    tt_safetensors_close(file);
    tt_error_clear(ctx);
    fuzz_state(ctx);
}
static void fuzz_config(tt_context *ctx, const char *json, size_t size) {
    tt_model_config a, b;
    tt_text once = TT_INIT, twice = TT_INIT;
    once.ctx = twice.ctx = ctx;
    if (tt_model_config_parse(ctx, json, size, &a) != TT_OK) {
        check(ctx, 1);
        return;
    }
    if (tt_model_config_json(&a, &once) != TT_OK || tt_model_config_parse(ctx, once.data, once.size, &b) != TT_OK) abort();
    if (tt_model_config_json(&b, &twice) != TT_OK || strcmp(once.data, twice.data) != 0) abort();
    tt_text_free(&once);
    tt_text_free(&twice);
}
/* One forward pass of whatever was loaded: its tensors must be where they say. */
static void use_model(tt_context *ctx, tt_model *model) {
    static const int32_t tokens[] = {0}, offsets[] = {0, 1};
    tt_batch_desc text = TT_INIT;
    check(ctx, !model);
    if (!model) return;
    text.n_sequences = 1;
    text.tokens = tokens;
    text.offsets = offsets;
    if (tt_model_size(model) < 65536) tt_model_logits(model, tt_model_forward(model, tt_batch_create(ctx, &text)));
    tt_step_reset(ctx);
    tt_model_destroy(model);
}
static void fuzz_adapter(tt_context *ctx) {
    tt_model_config config = TT_INIT;
    tt_model *model;
    config.vocab_size = 3;
    config.hidden_size = config.intermediate_size = 2;
    config.num_hidden_layers = config.num_attention_heads = 1;
    config.max_position_embeddings = 4;
    model = tt_model_create(ctx, &config, 1);
    if (!model) return;
    check(ctx, tt_model_lora_load(model, fuzz_dir) != TT_OK);
    use_model(ctx, model);
}
static void remove_dir(void) {
    static const char *const names[] = {"config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++) remove(fuzz_path(names[i]));
    rmdir(fuzz_dir);
}
/* Bytes that begin with '{' are any of the JSON files, all others any of the safetensors files. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tt_desc desc = TT_INIT;
    tt_context *ctx;
    int is_json = size && data[0] == '{';
    desc.n_threads = 1;
    ctx = tt_create(&desc);
    if (!ctx) return 0;
    if (!fuzz_dir[0]) {
        struct stat info;
        const char *root = stat("/dev/shm", &info) == 0 ? "/dev/shm" : "build/tmp";      /* files in memory: 50 times as fast */
        snprintf(fuzz_dir, sizeof fuzz_dir, "%s/tt-fuzz-%ld", root, (long)getpid());
        tt_make_dirs(ctx, fuzz_dir);
        atexit(remove_dir);
    }
    put_file("config.json", is_json ? (const void *)data : tiny_config, is_json ? size : sizeof tiny_config - 1);
    put_file("generation_config.json", is_json ? (const void *)data : "{}", is_json ? size : 2);
    put_file("adapter_config.json", is_json ? (const void *)data : tiny_adapter, is_json ? size : sizeof tiny_adapter - 1);
    put_file("model.safetensors.index.json", is_json ? (const void *)data : tiny_index, is_json ? size : sizeof tiny_index - 1);
    if (is_json) {
        tt_model *model;
        tti_generation generation = TT_INIT;
        tt_text text = TT_INIT;
        text.ctx = ctx;
        fuzz_config(ctx, (const char *)data, size);
        if (tt_text_append(&text, (const char *)data, size) != TT_OK) abort();
        check(ctx, tti_generation_parse(ctx, "generation_config.json", text.data, text.size, &generation) != TT_OK);
        tti_strfree(ctx, generation.text);
        tt_text_free(&text);
        remove(fuzz_path("model.safetensors"));
        put_file("config.json", tiny_config, sizeof tiny_config - 1);
        model = tt_model_load(ctx, fuzz_dir);              /* the bytes are an index whose shards are not there */
        check(ctx, !model);
        tt_model_destroy(model);
        put_file("adapter_model.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    } else {
        fuzz_safetensors(ctx, data, size);
        use_model(ctx, tt_model_load(ctx, fuzz_dir));
        use_model(ctx, tt_model_map(ctx, fuzz_dir));
        put_file("adapter_model.safetensors", data, size);
    }
    fuzz_adapter(ctx);
    if (tt_memory_get(ctx).current_bytes > ((size_t)1 << 24)) abort();
    tt_destroy(ctx);
    return 0;
}

#ifdef TT_FUZZ_MAIN
static const char header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"state\":\"{\\\"a\\\":1}\"},\"a.w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[16,24]},\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]}}";
/* four zeros as tt_state_save writes them */
static const char state_header[] = "{\"__metadata__\":{\"format\":\"pt\",\"checksum\":\"3df5d1da7d111d52\",\"state\":\"{\\\"a\\\":1}\"},\"w\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}";
static const char *const texts[] = {
    "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64},"
    "\"eos_token_id\":[1,2],\"attention_bias\":true}",
    "{\"model_type\":\"smollm3\",\"vocab_size\":96,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,\"no_rope_layers\":[1,0,1,0],\"layer_types\":[\"full_attention\"]}",
    "{\"model_type\":\"gpt2\",\"vocab_size\":96,\"n_embd\":64,\"n_layer\":4,\"n_head\":4,\"n_inner\":null,\"n_positions\":32,\"eos_token_id\":9}",
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4.5,\"target_modules\":[\"q_proj\",\"mlp.up_proj\"],\"rank_pattern\":{},\"modules_to_save\":null,\"use_dora\":false,\"bias\":\"none\"}",
    "{\"do_sample\":true,\"temperature\":0.6,\"top_p\":0.9,\"top_k\":50,\"eos_token_id\":[1,2,3],\"repetition_penalty\":1.1}",
    "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"model.norm.weight\":\"model-00001-of-00002.safetensors\",\"lm_head.weight\":\"model-00002-of-00002.safetensors\"}}",
};
enum { N_TEXTS = sizeof texts / sizeof texts[0] };
static size_t sample(char *out, int which) {
    const char *text = which % 2 ? state_header : header;
    size_t n = strlen(text), data = which % 2 ? 16 : 32;
    if (which < N_TEXTS) { memcpy(out, texts[which], strlen(texts[which])); return strlen(texts[which]); }
    memset(out, 0, 8 + n + data);
    out[0] = (char)(n & 255);
    out[1] = (char)(n >> 8);
    memcpy(out + 8, text, n);
    return 8 + n + data;
}
int main(int argc, char **argv) {
    static const char pieces[] = "0123456789-.e[]{},:\"truefalsnull\\";
    long runs = argc > 1 ? atol(argv[1]) : 10000, run;
    tt_rng rng = TT_INIT;
    char bytes[2048];
    rng.seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (run = 0; run < runs; run++) {
        size_t n = sample(bytes, (int)(run % (2 * N_TEXTS)));
        int edits = run < 2 * N_TEXTS ? 0 : 1 + tt_rng_below(&rng, 6);
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
