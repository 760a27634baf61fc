#!/bin/sh
# tests/test_hosts.sh: what surrounds the library and its programs. Macros of other headers, static linking with threads,
# outputs and inputs that are no regular files, the system's limit on the size of files, JSON lines as people have them.
cd "$(dirname "$0")/.." || exit 1
cc=${CC:-cc} dir=build/hosts
rm -rf $dir; mkdir -p $dir
. tests/verdict.sh
log=$dir/log
refuses() {   # word name command...: fails with the word on standard error, soon, and not by a signal
    word=$1 name=$2; shift 2
    timeout 20 "$@" > $dir/log 2>&1
    status=$?
    [ $status -ge 1 ] && [ $status -le 2 ] && grep -q -- "$word" $dir/log
    verdict $? "$name"
}

# ---- macros ----
printf '#include "../../tests/header_macros.h"\n#include "thinktuning.h"\nint unit(void);\nint unit(void) { return TT_OK; }\n' > $dir/public.c
# In the file of the implementation Qt's slots is no macro, and the C library's headers come before them.
for header in errno float limits math stdio stdlib string time; do echo "#include <$header.h>"; done > $dir/whole.c
printf '#include "../../tests/header_macros.h"\n#undef slots\n#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\n' >> $dir/whole.c
for compiler in "$cc -std=c99" "${CXX:-c++} -x c++ -std=c++11"; do
    if ! command -v "${compiler%% *}" > /dev/null; then echo "skip macros: no ${compiler%% *}"; continue; fi
    for unit in public whole; do
        $compiler -D_GNU_SOURCE -I. -fsyntax-only -Wall -Wextra -Werror $dir/$unit.c > $dir/log 2>&1
        verdict $? "macros of other headers before the $unit header: $compiler"
    done
done

# ---- threads without the dynamic linker ----
cat > $dir/threads.c << 'END'
#define THINKTUNING_IMPLEMENTATION
#include "thinktuning.h"
int main(void) {
    static int32_t tokens[256], ends[] = {0, 256};
    tt_desc desc = TT_INIT;
    tt_model_config config = TT_INIT;
    tt_batch_desc batch = TT_INIT;
    tt_context *ctx;
    tt_tensor *loss;
    int i;
    desc.n_threads = 4;
    ctx = tt_create(&desc);
    config.vocab_size = 300; config.hidden_size = 64; config.num_hidden_layers = 2; config.num_attention_heads = 4;
    for (i = 0; i < 256; i++) { tokens[i] = i * 7 % 300; }
    batch.n_sequences = 1; batch.offsets = ends; batch.tokens = tokens;
    loss = tt_neg(ctx, tt_mean(ctx, tt_model_logprobs(tt_model_create(ctx, &config, 1), tt_batch_create(ctx, &batch), 1, NULL)));
    if (tt_backward(ctx, loss) != TT_OK) { puts(tt_error(ctx)); return 1; }
    printf("%d %.9g\n", tt_threads(ctx), tt_item(loss));
    return 0;
}
END
# The names of an older C library, where threads are weak.
printf '#include <stdio.h>\n#ifdef __GLIBC_MINOR__\n#undef __GLIBC_MINOR__\n#define __GLIBC_MINOR__ 17\n#endif\n#include "threads.c"\n' > $dir/older.c
linked="-std=c99 -O0 -I. -DLINKED_PUBLIC -include tests/linked.h $dir/threads.c build/thinktuning.o"
$cc $linked -o $dir/threads -lm > $dir/log 2>&1 && $dir/threads > $dir/dynamic 2>> $dir/log
verdict $? "threads: $(cat $dir/dynamic)"
printf 'int main(void) { return 0; }\n' > $dir/empty.c
if $cc -static $dir/empty.c -o $dir/empty -lm 2> /dev/null; then
    for link in "-static" "-static -pthread"; do
        $cc $linked -o $dir/static $link -lm > $dir/log 2>&1 && $dir/static > $dir/got 2>> $dir/log && cmp -s $dir/got $dir/dynamic
        verdict $? "threads of a program linked $link"
    done
    if exhaustive; then
        $cc -std=c99 -D_GNU_SOURCE -O0 -I. $dir/older.c -o $dir/static -static -lm > $dir/log 2>&1 && $dir/static > $dir/got 2>> $dir/log &&
            { cmp -s $dir/got $dir/dynamic || [ "$(cat $dir/got)" = "1 $(cut -d ' ' -f 2 $dir/dynamic)" ]; }
        verdict $? "an older C library, linked -static, has one thread or all, and the same result"
    else
        echo "skipped: an older C library, linked -static (TT_EXHAUSTIVE=1 runs it)"
    fi
else
    echo "skip static linking: no static C library"
fi

# ---- programs ----
for program in tokenize pretrain sft thinktune; do
    [ build/$program -nt thinktuning.h ] || $cc -std=c99 -O1 -g examples/$program.c -o build/$program -lm > $dir/log 2>&1 || { verdict 1 "compiles $program"; exit 1; }
done
i=0
while [ $i -lt 400 ]; do echo "the cat sat on the mat and the dog ran after it over the hill $i"; i=$((i + 1)); done > $dir/text.txt
tiny="--hidden-size 16 --layers 1 --heads 2 --context 32 --batch-tokens 128 --vocab-size 300 --steps 1"
train="build/tokenize train --input $dir/text.txt --vocab-size 300 --out"

mkfifo $dir/pipe; ln -s victim $dir/link; echo keep > $dir/victim; mkdir $dir/folder
refuses "a pipe" "tokenize --out a pipe" $train $dir/pipe
refuses "a folder" "tokenize --out a folder" $train $dir/folder
refuses "a symbolic link" "tokenize --out a link" $train $dir/link
refuses "empty" "tokenize --out ''" $train ""
if mknod $dir/node c 1 3 2> /dev/null; then refuses "a device" "tokenize --out a device" $train $dir/node; else echo "skip a device as output: only root can make one"; fi
[ -p $dir/pipe ] && [ -L $dir/link ] && [ "$(cat $dir/victim)" = keep ] && { [ ! -e $dir/node ] || [ -c $dir/node ]; }
verdict $? "what stood there stands there still"
refuses "empty" "pretrain --out ''" build/pretrain --data $dir/text.txt $tiny --out ""
refuses "$dir/victim" "pretrain --out a file" build/pretrain --data $dir/text.txt $tiny --out $dir/victim
mkdir $dir/traps; ln -s ../victim $dir/traps/model.safetensors.tmp; ln -s ../victim $dir/traps/tokenizer.json.tmp
build/pretrain --data $dir/text.txt $tiny --out $dir/traps > $dir/log 2>&1 && [ "$(cat $dir/victim)" = keep ] && [ -f $dir/traps/model.safetensors ] &&
    [ ! -L $dir/traps/model.safetensors ] && [ -z "$(find $dir/traps -name 'tt-*')" ]
verdict $? "links under the names of temporary files are not followed"

refuses "a pipe" "pretrain --data a pipe" build/pretrain --data $dir/pipe $tiny --out $dir/none
refuses "a pipe" "tokenize --input a pipe" build/tokenize train --input $dir/pipe --vocab-size 300 --out $dir/none.json
refuses "a device" "pretrain --data a device" build/pretrain --data /dev/zero $tiny --out $dir/none
build/tokenize train --input - --vocab-size 300 --out $dir/stdin.json < $dir/text.txt > $dir/log 2>&1 && $train $dir/file.json >> $dir/log 2>&1 && cmp $dir/stdin.json $dir/file.json >> $dir/log 2>&1
verdict $? "tokenize reads standard input as -"
for file in config.json generation_config.json tokenizer.json model.safetensors; do
    rm -rf $dir/odd; cp -r $dir/traps $dir/odd; rm $dir/odd/$file; mkfifo $dir/odd/$file
    refuses "$dir/odd/$file: it is a pipe" "a model whose $file is a pipe" build/sft --model $dir/odd --data $dir/text.txt --out $dir/none
done

( ulimit -f 8; build/pretrain --data $dir/text.txt $tiny --out $dir/limited > $dir/log 2>&1; status=$?; [ $status -eq 1 ] && grep -q "cannot write $dir/limited/" $dir/log ) &&
    [ -z "$(find $dir/limited -name 'tt-*')" ]
verdict $? "a limit on the size of files is an error, and nothing is left behind"

name=$(printf '%0200d' 1)
long=$PWD/$dir/long/$name/$name/$name/$name/$name/$name
refuses "bytes, expected at most" "thinktune --out longer than any path" build/thinktune --quick --out "$long/$long/$long/$long"
timeout 300 build/thinktune --quick --pretrain-steps 20 --steps 1 --arms grpo --out "$long" > $dir/log 2>&1
[ -f "$long/report.html" ] && [ -f "$long/metrics.jsonl" ]
verdict $? "thinktune --out of $(printf %s "$long" | wc -c) bytes"

# ---- JSON lines ----
row='{"prompt": "the cat", "completion": " sat on the mat"}'
sft="build/sft --model $dir/traps --epochs 1 --out $dir/tuned --data"
printf '\357\273\277%s\r\n   \t\r\n\n%s\n \n' "$row" "$row" > $dir/blank.jsonl
timeout 60 $sft $dir/blank.jsonl > $dir/log 2>&1 && grep -q ": 2 examples" $dir/log
verdict $? "sft: a byte order mark and lines of blanks"
printf '%s\n{"prompt": "the cat", "completion": " sat\\u0000 on the mat"}\n' "$row" > $dir/nul.jsonl
refuses 'nul.jsonl line 2: "completion" has the character U+0000' "sft: a NUL in a text" $sft $dir/nul.jsonl
printf '%s\n{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\\u0000"}]}\n' "$row" > $dir/nul.jsonl
refuses 'nul.jsonl line 2: "content" has' "sft: a NUL in a message" $sft $dir/nul.jsonl
printf '%s\n{"prompt": \n' "$row" > $dir/bad.jsonl
refuses 'bad.jsonl line 2: JSON' "sft: a line that is no JSON" $sft $dir/bad.jsonl

summary
