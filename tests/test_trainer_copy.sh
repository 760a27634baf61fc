#!/bin/sh
# tests/test_trainer_copy.sh: the trainer is a client of the library. Its text, from the mark [tt:train.client] to the
# chapter's end, is cut out of thinktuning.h, put behind the public part alone, its public functions renamed my_..., and
# must compile without a warning as C and as C++; the copy and the original then train the same weights.
# Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
dir=build/trainer_copy
mkdir -p $dir
. tests/verdict.sh
log=$dir/log

# From the mark to the next banner of a chapter, or to the first section that has no mark of the trainer's.
awk '/^\/\* ---- \[tt:train\.client\]/ { on = 1 }
     on && (/^\/\* ====/ || (/^\/\* ----/ && !/\[tt:train\./)) { exit }
     on' thinktuning.h > $dir/chapter.c
lines=$(wc -l < $dir/chapter.c)
echo "$lines lines" > $dir/log
[ "$lines" -gt 500 ]; verdict $? "the chapter is found: $lines lines"

# Every function that the chapter defines as public gets a name of its own.
sed -n 's/^TT_API .*[ *]\(tt_[a-z_]*\)(.*/\1/p' $dir/chapter.c | sort -u > $dir/names
{
    echo '#include "thinktuning.h"'
    printf '#include <%s.h>\n' limits math stdio stdlib string
    sed 's/tt_\(.*\)/#define tt_\1 my_\1/' $dir/names
    cat $dir/chapter.c
} > $dir/copy.c
warn="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -I."
${CC:-cc} -std=c99 -O1 $warn -c $dir/copy.c -o $dir/copy.o > $dir/log 2>&1
verdict $? "it compiles as C99 against the public part"
if command -v "${CXX:-c++}" > /dev/null; then
    ${CXX:-c++} -x c++ -std=c++11 -O0 $warn -c $dir/copy.c -o $dir/copy-cpp.o > $dir/log 2>&1
    verdict $? "it compiles as C++11"
fi

cat > $dir/both.c << 'END'
/* Two students learn to repeat a letter, one with tt_trainer_step and one with the copy: they stay equal. */
#include "thinktuning.h"
#include <stdio.h>
#include <string.h>
tt_trainer *my_trainer_create(tt_context *, const tt_trainer_desc *);
tt_status my_trainer_step(tt_trainer *, tt_step_metrics *);
tt_status my_metrics_json(const tt_step_metrics *, tt_text *);
void my_trainer_destroy(tt_trainer *);

static tt_status question(void *user, int split, uint64_t index, tt_text *question, tt_text *answer) {
    (void)user, (void)split;
    tt_text_format(answer, " %c", (char)('a' + index % 4));
    return tt_text_append(question, answer->data, answer->size);
}

static tt_status reward(void *user, const tt_reward_input *in, float *reward) {
    (void)user;
    *reward = in->stopped ? 0.25f + 0.75f * (strcmp(in->answer, in->response) == 0) : 0;
    return TT_OK;
}

int main(void) {
    static const char *const words[] = {" a", " b", " c", " d", " a"}, *const special[] = {"<q>", "<a>", "<end>"};
    tt_context *ctx = tt_create(NULL);
    tt_tokenizer_desc names = TT_INIT;
    tt_model_config config = TT_INIT;
    tt_task task = TT_INIT;
    tt_trainer_desc desc = TT_INIT;
    tt_trainer *trainer[2];
    tt_model *model[2];
    tt_text json[2] = {TT_INIT, TT_INIT};
    int k, i, same = 1;
    names.special_tokens = special;
    names.n_special_tokens = 3;
    task.name = "echo";
    task.question = question;
    task.reward = reward;
    task.prompt_template = "<q>{question}<a>";
    task.end_token = "<end>";
    desc.tokenizer = tt_tokenizer_words(ctx, &names, words, 5);
    desc.task = &task;
    desc.grpo.num_generations = 4;
    desc.grpo.max_completion_length = 4;
    desc.grpo.num_mini_batches = 2;
    desc.grpo.beta = 0.1f;
    desc.schedule.lr = 0.01f;
    desc.prompts_per_step = 4;
    config.vocab_size = tt_vocab_size(desc.tokenizer);
    config.hidden_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = 2;
    config.max_position_embeddings = 16;
    for (k = 0; k < 2; k++) {
        json[k].ctx = ctx;
        desc.model = model[k] = tt_model_create(ctx, &config, 1);
        trainer[k] = k ? my_trainer_create(ctx, &desc) : tt_trainer_create(ctx, &desc);
        if (!trainer[k]) { return puts(tt_error(ctx)) < 0; }
        for (i = 0; i < 3; i++) {
            tt_step_metrics m;
            tt_status status = k ? my_trainer_step(trainer[k], &m) : tt_trainer_step(trainer[k], &m);
            m.step_s = 0;
            if (status == TT_OK) { status = k ? my_metrics_json(&m, &json[k]) : tt_metrics_json(&m, &json[k]); }
            if (status != TT_OK) { return puts(tt_error(ctx)) < 0; }
        }
    }
    for (i = 0; i < tt_model_n_params(model[0]); i++) {
        const tt_tensor *a = tt_model_param(model[0], i), *b = tt_model_param(model[1], i);
        same = same && memcmp(a->data, b->data, a->size * sizeof(float)) == 0;
    }
    printf("%s\n%s\n", json[0].data, json[1].data);
    same = same && strcmp(json[0].data, json[1].data) == 0;
    my_trainer_destroy(trainer[1]);
    tt_trainer_destroy(trainer[0]);
    puts(same ? "the same" : "different");
    return !same;
}
END
object=build/thinktuning.o
if [ ! -f $object ] || [ thinktuning.h -nt $object ]; then
    object=$dir/thinktuning.o
    ${CC:-cc} -std=c99 -O1 -x c -DTHINKTUNING_IMPLEMENTATION -c thinktuning.h -o $object
fi
${CC:-cc} -std=c99 -O1 -I. $dir/both.c $dir/copy.o $object -o $dir/both -lm > $dir/log 2>&1 &&
    $dir/both > $dir/log 2>&1 && grep -q '^the same$' $dir/log
verdict $? "copy and original train the same weights"

summary
