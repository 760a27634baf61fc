#!/usr/bin/env bash
# tests/test_cases.sh [WORD]: inputs as people have them and as nobody wishes them, from ../shared/cases (TT_CASES names another
# folder); with WORD the checks whose name has it. Each check says what has to happen: exit status, message, and what lies in the folders afterwards.
# Programs come from build/, where make puts them before; what is made here lies in build/cases. PYTHON with numpy, safetensors
# and tokenizers makes the models. Never names a device of the system as an output: a node of its own, if it may make one.
# Prints "ok name", "FAIL name" with what was seen, or "skip name: why"; last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
project=$PWD bin=$PWD/build dir=$PWD/build/cases python=${PYTHON:-python3} cc=${CC:-cc} cxx=${CXX:-c++}
cases=$(cd "${TT_CASES:-../shared/cases}" 2> /dev/null && pwd)
if [ -z "$cases" ]; then
    echo "skip cases: ${TT_CASES:-../shared/cases} is not there"
    echo "0 passed, 0 failed"
    exit 0
fi
export ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 LC_ALL=C
rm -rf "$dir" && mkdir -p "$dir" && cd "$dir" || exit 1
passed=0 failed=0 word=${1:-}

# check NAME COMMAND...: one line; what the command printed is shown if it fails.
check() {
    local name=$1
    shift
    case $name in *"$word"*) ;; *) return ;; esac
    if "$@" > log 2>&1; then
        passed=$((passed + 1)); echo "ok $name"
    else
        failed=$((failed + 1)); echo "FAIL $name"; tail -n 12 log | tr -cd '[:print:]\n' | cut -c1-300 | sed 's/^/  /'
    fi
}
skip() { echo "skip $1: $2"; }

# run SECONDS COMMAND...: its output in out and err, its exit status in rc.
run() {
    local seconds=$1
    shift
    timeout -k 2 "$seconds" "$@" > out 2> err < "${input:-/dev/null}"
    rc=$?
    echo "\$ $(printf '%s ' "$@" | cut -c1-200)-> $rc"
    { tail -n 3 out; tail -n 4 err; } | cut -c1-250
}
says() { grep -qiE -e "$1" err || { echo "the message has no: $1"; return 1; }; }
unsaid() { ! grep -E -e "$1" out err || { echo "must not be: $1"; return 1; }; }
# An end with an error in words: no signal, no time-out, no sanitizer, no traceback; its text matches.
refused() {
    [ "$rc" -ge 1 ] && [ "$rc" -le 2 ] || { echo "exit status $rc, expected 1 or 2"; return 1; }
    unsaid 'Traceback|Sanitizer|runtime error' && says "${1:-.}"
}
accepted() { [ "$rc" -eq 0 ] || { echo "exit status $rc, expected 0"; return 1; }; }
is() { [ "$1" = "$2" ] || { echo "$3 is $1, expected $2"; return 1; }; }
no_files() { [ -z "$(find "$@" -type f 2> /dev/null)" ] || { echo "there are files: $(find "$@" -type f | head -n 3)"; return 1; }; }
untrained() { unsaid '^step |^epoch |validation loss'; }

# The programs of the cases bring the implementation along; here it is compiled once, and they see a header without it.
# They are from before tasks, rewards and evaluation had files of their own: the header that they see includes these.
mkdir -p locales include/under whole
{ printf '#include "%s"\n' "$project"/thinktuning.h "$project"/examples/{tasks,evaluate}.h; } > whole/thinktuning.h
{ printf '#include <%s>\n' stdio.h stdlib.h string.h math.h; echo '#undef THINKTUNING_IMPLEMENTATION'; cat whole/thinktuning.h; } > include/thinktuning.h
printf '#define THINKTUNING_IMPLEMENTATION\n#include "%s/thinktuning.h"\n' "$project" > library.c
$cc -std=c99 -O1 -g -c library.c -o library.o > library.log 2>&1 & library=$!
$cc -std=gnu99 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -I whole "$cases/hostile_api.c" -o api -lm > api.log 2>&1 & api=$!
# built NAME [SOURCE FLAGS...]: compiles and links a program of the cases, if it is not there.
built() {   # NAME [SOURCE [FLAGS...]]: a program of the cases, or one that stands here
    local name=$1 source=$cases/${2:-$1.c}
    [ -f "$source" ] || source=$2
    shift $(($# > 1 ? 2 : 1))
    wait $library || { grep -m 3 error library.log; return 1; }
    [ -x "$name" ] || $cc -std=c99 -I include -I include/under "$source" library.o -o "$name" "$@" -lm
}

echo 'int main(void) { return 0; }' > empty.c
static=; $cc -static empty.c -o empty -lm > log 2>&1 && static=1

# ---- what everything works on ----------------------------------------------------------------------------------------
"$python" -c "
import random, json
random.seed(1)
words = 'the cat sat on a mat and dog ran over hill with seven old men who like to eat fresh bread in the sun by river'.split()
open('text.txt', 'w').write('\n'.join(' '.join(random.choice(words) for _ in range(12)) + '.' for _ in range(3000)))
open('text2.txt', 'w').write('\n'.join(' '.join(random.choice(words) for _ in range(12)) + '.' for _ in range(2500)))
for name, n in (('q', 60), ('q2', 50)):
    open(name + '.jsonl', 'w').write(''.join(json.dumps({'question': 'what is %d' % i, 'answer': '%d' % i}) + '\n' for i in range(n)))" || exit 1
tiny="--hidden-size 16 --layers 1 --heads 2 --context 32 --batch-tokens 128 --vocab-size 300"
"$bin"/pretrain --data text.txt --out base --vocab-size 400 --hidden-size 32 --layers 2 --heads 4 --context 64 --steps 60 --batch-tokens 512 --eval-every 20 > log 2>&1 ||
    { echo "FAIL no model to start from"; tail -n 3 log; echo "0 passed, 1 failed"; exit 1; }
copy() { rm -rf "$1" && cp -r "${2:-base}" "$1"; }
# setting NAME JSON [FROM]: a copy of a model with other fields in config.json
setting() {
    copy "$1" "${3:-base}" && "$python" -c "
import json, sys
config = json.load(open(sys.argv[1] + '/config.json'))
config.update(json.loads(sys.argv[2]))
json.dump(config, open(sys.argv[1] + '/config.json', 'w'))" "$1" "$2"
}

# ---- outputs ---------------------------------------------------------------------------------------------------------
still() { is "$(stat -c '%F %t:%T' "$1")" "$2" "$1"; }
node_stays() {    # KIND as stat tells it, COMMAND... with an output of that kind
    local path=$1 kind=$2
    shift 2
    run 60 "$@"
    refused "$(basename "$path")" && untrained && still "$path" "$kind"
}
outputs_on() {    # WHAT KIND HOW-TO-MAKE-IT...
    local what=$1 kind=$2
    shift 2
    place() { rm -rf nodes && mkdir nodes && "$@"; }
    place "$@" nodes/it && check "tokenize train does not replace $what" node_stays nodes/it "$kind" "$bin"/tokenize train --input text.txt --vocab-size 300 --out nodes/it
    place "$@" nodes/it && check "pretrain does not replace $what" node_stays nodes/it "$kind" "$bin"/pretrain --data text.txt $tiny --steps 20 --eval-every 10 --out nodes/it
    place "$@" nodes/it && check "sft does not replace $what" node_stays nodes/it "$kind" "$bin"/sft --model base --data q.jsonl --epochs 1 --out nodes/it
    place "$@" nodes/it && check "thinktune does not replace $what" node_stays nodes/it "$kind" "$bin"/thinktune --quick --out nodes/it
    place "$@" nodes/model.safetensors && check "pretrain does not replace $what in its folder" node_stays nodes/model.safetensors "$kind" "$bin"/pretrain --data text.txt $tiny --steps 20 --eval-every 10 --out nodes
    place "$@" nodes/model.safetensors && check "sft does not replace $what in its folder" node_stays nodes/model.safetensors "$kind" "$bin"/sft --model base --data q.jsonl --epochs 1 --out nodes
}
null_node() { mknod "$1" c 1 3; }
if null_node node 2> log; then outputs_on "a device node" "character special file 1:3" null_node; else skip "a device node as output" "mknod is not allowed here"; fi
outputs_on "a FIFO" "fifo 0:0" mkfifo

link_stays() {
    rm -rf linked && mkdir linked && echo keep > victim
    for name in model.safetensors config.json tokenizer.json training.safetensors; do ln -s "$dir/victim" "linked/$name.tmp"; done
    run 60 "$bin"/pretrain --data text.txt $tiny --steps 1 --out linked
    is "$(md5sum < victim)" "$(echo keep | md5sum)" "the checksum of the file that the link leads to" && { [ "$rc" -ne 0 ] || is "$(stat -c %F linked/model.safetensors)" "regular file" linked/model.safetensors; }
}
check "a link at a temporary name is not written through" link_stays

nothing_over() {
    rm -rf over && run 60 "$bin"/pretrain --data text.txt $tiny --steps 1 --out over && accepted &&
        is "$(find over -name '*tmp*' | wc -l)" 0 "the number of temporary files left"
}
check "no temporary file is left" nothing_over

file_stays() {
    echo precious > afile
    run 60 "$@" --out afile
    refused afile && untrained && is "$(cat afile)" precious afile
}
check "sft sees before training that --out is a file" file_stays "$bin"/sft --model base --data q.jsonl --epochs 2
check "pretrain sees before training that --out is a file" file_stays "$bin"/pretrain --data text.txt $tiny --steps 50 --eval-every 50
check "thinktune sees before training that --out is a file" file_stays "$bin"/thinktune --quick

if [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null && setpriv --reuid 65534 --clear-groups true 2> /dev/null; then
    locked_folder() {
        rm -rf locked && mkdir locked && chmod 555 locked
        run 60 setpriv --reuid 65534 --clear-groups "$@" --out locked
        refused locked && untrained
    }
    check "sft sees before training that it may not write to --out" locked_folder "$bin"/sft --model base --data q.jsonl --epochs 1
    check "pretrain sees before training that it may not write to --out" locked_folder "$bin"/pretrain --data text.txt $tiny --steps 50 --eval-every 50
else
    skip "a folder that may not be written to" "no other user to run as"
fi

# With standard output closed the first file opened is number 1: nothing that is printed may land in it.
closed_output() {
    rm -rf closed
    run 120 sh -c 'exec "$0" "$@" >&-' "$bin"/thinktune --quick --steps 2 --pretrain-steps 10 --out closed
    find closed -size +0 -name lock | grep . && { echo "the lock holds what was printed"; return 1; }
    "$python" -c "
import glob, json
for line in open('closed/metrics.jsonl'): json.loads(line)
for name in glob.glob('closed/**/*.json', recursive=True): json.load(open(name))"
}
check "what thinktune prints with its output closed lands in no file" closed_output

long_path() {
    local long
    long=$dir/$("$python" -c "print('/'.join(['c' * 200] * 6))")
    run 60 "$@" --out "$long"
    if [ "$rc" -eq 0 ]; then [ -n "$(find "$long" -type f)" ] || { echo "nothing in the folder asked for"; return 1; }; else refused && no_files cccc*; fi
}
at_end_of_long_path() { rm -rf cccc*; long_path "$@"; local status=$?; rm -rf cccc*; return $status; }
check "pretrain with --out above 1023 bytes" at_end_of_long_path "$bin"/pretrain --data text.txt $tiny --steps 1
check "sft with --out above 1023 bytes" at_end_of_long_path "$bin"/sft --model base --data q.jsonl --epochs 1
check "thinktune with --out above 1023 bytes" at_end_of_long_path "$bin"/thinktune --quick

one_writer() {    # the second of two programs on a folder
    rm -rf two out1
    "$bin"/pretrain --data text.txt $tiny --steps 1000000 --eval-every 5 --out two > out1 2>&1 &
    local first=$! tries=0
    while [ ! -f two/model.safetensors ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    run 60 "$@" --out two
    kill -0 $first 2> /dev/null || echo "the first ended too early to tell"
    kill -TERM $first; wait $first 2> /dev/null
    refused two && untrained
}
check "pretrain into the folder of a running pretrain" one_writer "$bin"/pretrain --data text.txt $tiny --steps 20 --eval-every 1
check "sft into the folder of a running pretrain" one_writer "$bin"/sft --model base --data q.jsonl --epochs 1
both_at_once() {
    rm -rf two rc1 rc2
    local pids=
    for seed in 1 2; do ("$bin"/pretrain --data text.txt $tiny --steps 200 --eval-every 1 --out two --seed $seed > "out$seed" 2>&1; echo $? > rc$seed) & pids="$pids $!"; done
    wait $pids
    tail -n 2 out1 out2
    is "$(sort rc1 rc2 | xargs)" "0 1" "the exit statuses" && is "$(grep -l '^step' out1 out2 | wc -l)" 1 "the number of those that trained" && run 30 "$bin"/generate --model two --prompt the --max-tokens 2 && accepted
}
check "of two pretrain runs on one folder one is refused and one ends well" both_at_once
lock_goes() {     # what was killed does not keep its folder
    rm -rf two
    "$bin"/pretrain --data text.txt $tiny --steps 1000000 --eval-every 5 --out two > out1 2>&1 &
    sleep 0.5; kill -KILL $!; wait $! 2> /dev/null
    run 60 "$bin"/pretrain --data text.txt $tiny --steps 2 --eval-every 1 --out two
    accepted
}
check "a killed run does not keep its folder" lock_goes

small_files() {   # a limit on the size of files, with and without the signal
    rm -rf small
    [ "$1" = ignored ] && trap '' XFSZ
    shift
    ulimit -f 8
    timeout 60 "$@" --out small 2>&1 > /dev/null | head -c 4000 > /dev/null
    echo "rc=${PIPESTATUS[0]}"
}
size_limit() {
    small_files "$@" > status.txt; cat status.txt
    grep -qx 'rc=1' status.txt && no_files small -name model.safetensors
}
for how in heeded ignored; do
    check "a limit on file sizes is an error, SIGXFSZ $how" eval "(size_limit $how $bin/pretrain --data text.txt $tiny --steps 1)"
done

# ---- inputs ----------------------------------------------------------------------------------------------------------
many_heads() {    # shapes before memory
    setting heads '{"num_attention_heads":65536,"num_key_value_heads":65536,"head_dim":512}'
    (ulimit -v 1500000; run 10 "$bin"/generate --model heads --prompt x; refused 'heads|head_dim|_proj|shape' && ! grep -i 'memory' err)
}
check "a small file of many heads is refused within 10 s and 1.5 GB" many_heads
many_positions() {
    setting rope '{"max_position_embeddings":16777216}'
    (ulimit -v 700000; run 30 "$bin"/generate --model rope --prompt the --max-tokens 2; accepted)
}
check "2^24 positions take no memory until they are used" many_positions

survives_truncation() {
    [ -d big ] || "$bin"/pretrain --data text.txt --out big --vocab-size 300 --hidden-size 256 --layers 4 --heads 8 --context 1024 --steps 1 --batch-tokens 16 > /dev/null 2>&1
    rm -rf cut && cp -r big cut
    OMP_NUM_THREADS=1 "$bin"/generate --model cut --prompt the --max-tokens 600 > out 2> err &
    local q=$! tries=0
    while [ ! -s out ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    sleep 0.3; truncate -s 0 cut/model.safetensors; wait $q; rc=$?
    tail -n 3 err; accepted
}
check "a model cut short while generate uses it does no harm" survives_truncation
check "the header says what truncation does to a mapped file" eval "grep -iE 'SIGBUS|truncat' $project/thinktuning.h | grep -iE 'map|SIGBUS'"

not_finite() {
    local value=$1
    shift
    copy nanm && rm -rf nanout && "$python" -c "
import struct, sys
b = bytearray(open('nanm/model.safetensors', 'rb').read())
b[-4:] = struct.pack('<f', float(sys.argv[1]))
open('nanm/model.safetensors', 'wb').write(b)" "$value"
    run 60 "$bin"/sft --model nanm --data q.jsonl --out nanout --epochs 1 "$@"
    refused 'finite|nan' && no_files nanout -name '*model.safetensors'
}
check "sft of a model with NaN ends with an error and saves nothing" not_finite nan
check "sft of a model with infinity ends with an error and saves nothing" not_finite inf
check "sft with adapters of a model with NaN ends with an error and saves nothing" not_finite nan --lora-rank 4

resumed_as() {    # PROGRAM SETTING VALUE: refused by name, and the state stays
    local before
    before=$(md5sum < "$1/training.safetensors")
    shift
    run 60 "$@"
    refused "${*: -2:1}" && is "$(md5sum < resumed/training.safetensors)" "$before" "the training state's checksum"
}
pretrain_stop="$bin/pretrain --data text.txt $tiny --steps 20 --out resumed"
sft_stop="$bin/sft --model base --data q.jsonl --epochs 2 --batch-tokens 64 --out resumed"
resume_check() {  # NAME COMMAND SETTING VALUE
    rm -rf resumed
    $2 --stop-after 10 > log2 2>&1 || { cat log2; return 1; }
    resumed_as resumed $2 --resume "$3" "$4"
}
for change in "--seed 9" "--lr 1e-5" "--data text2.txt" "--batch-tokens 256" "--steps 30"; do check "pretrain --resume refuses another ${change% *}" resume_check pretrain "$pretrain_stop" $change; done
copy other
"$bin"/pretrain --data text.txt --out other --vocab-size 400 --hidden-size 32 --layers 2 --heads 4 --context 64 --steps 3 --batch-tokens 512 --seed 5 > log 2>&1
for change in "--seed 9" "--lr 1e-5" "--data q2.jsonl" "--batch-tokens 128" "--epochs 3" "--model other"; do check "sft --resume refuses another ${change% *}" resume_check sft "$sft_stop" $change; done
resume_same() {
    rm -rf resumed whole
    $1 --stop-after 10 > /dev/null 2>&1
    run 60 $1 --resume
    accepted && run 60 ${1% --out resumed} --out whole && accepted && cmp resumed/model.safetensors whole/model.safetensors
}
check "pretrain --resume with the same settings ends as a run in one piece" resume_same "$pretrain_stop"
check "sft --resume with the same settings ends as a run in one piece" resume_same "$sft_stop"

long_token() {    # time grows about as the token, ids stay
    local k
    for k in 5000 20000; do
        "$python" -c "
import json
t = json.load(open('base/tokenizer.json'))
t['added_tokens'].append({'id': 700, 'content': 'a' * $k + 'b', 'special': True})
json.dump(t, open('long$k.json', 'w'))
open('a$k.txt', 'w').write('a' * 4 * $k)"
        "$bin"/tokenize encode --tokenizer long$k.json a$k.txt > with 2> err || { cat err; return 1; }
        "$bin"/tokenize encode --tokenizer base/tokenizer.json a$k.txt > without 2> err || return 1
        cmp with without || return 1
    done
    "$python" - "$bin/tokenize" << 'END'
import subprocess, sys, time
def seconds(k):
    start = time.perf_counter()
    subprocess.run([sys.argv[1], 'encode', '--tokenizer', f'long{k}.json', f'a{k}.txt'], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
short, long = min(seconds(5000) for _ in range(3)), min(seconds(20000) for _ in range(2))
print(f'{short:.2f} s, four times as long {long:.2f} s')
sys.exit(long > 8 * short + 0.1)
END
}
check "an added token of 20,000 letters costs time as it is long" long_token

no_regular() {    # a FIFO where a file is expected: named by $pipe
    run 3 "$@"
    refused "$pipe"
}
fifo_in() { copy piped && rm -f "piped/$1" && mkfifo "piped/$1"; }
for file in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json; do
    fifo_in $file
    pipe=$file check "generate does not wait for a FIFO at $file" no_regular "$bin"/generate --model piped --prompt x
done
mkfifo pipe; pipe=pipe
check "pretrain does not wait for a FIFO" no_regular "$bin"/pretrain --data pipe --out z $tiny
check "sft does not wait for a FIFO" no_regular "$bin"/sft --model base --data pipe --out z
check "tokenize does not wait for a FIFO" no_regular "$bin"/tokenize encode --tokenizer base/tokenizer.json pipe
check "tokenize train does not wait for a FIFO" no_regular "$bin"/tokenize train --input pipe --vocab-size 300 --out z.json
check "thinktune does not wait for a FIFO" no_regular "$bin"/thinktune --model base --data pipe --end-token '<|endoftext|>' --out z
endless() { (ulimit -v 2000000; run 10 "$@"; refused zero && ! grep -i memory err); }
check "pretrain refuses an endless file" endless "$bin"/pretrain --data /dev/zero --out z $tiny
check "sft refuses an endless file" endless "$bin"/sft --model base --data /dev/zero --out z
check "tokenize refuses an endless file" endless "$bin"/tokenize encode --tokenizer base/tokenizer.json /dev/zero
rm -rf z

one_turn() {
    setting long '{"max_position_embeddings":200000}'
    "$python" -c "print('the ' * 17500)" > turn.txt && echo 'the' > short.txt
    input=short.txt run 60 "$bin"/generate --model long --chat --format plain --max-tokens 2 && accepted || return 1
    local turns
    turns=$(grep -c '^>' out)
    input=turn.txt run 120 "$bin"/generate --model long --chat --format plain --max-tokens 2
    if [ "$rc" -eq 0 ]; then is "$(grep -c '^>' out)" "$turns" "the number of prompts"; else refused 'bytes|line'; fi
}
check "a line of 70,000 bytes is one turn of a chat or an error" one_turn

broken() {        # FILE CONTENT COMMAND...: the error names the file
    local file=$1 content=$2
    shift 2
    copy bj && printf '%s' "$content" > "bj/$file"
    run 20 "$@"
    refused "bj/$file"
}
for file in config.json tokenizer.json tokenizer_config.json generation_config.json; do
    check "an error in $file names its file" broken $file '{' "$bin"/generate --model bj --prompt x
done
check "a wrong field of config.json names its file" eval "setting bj '{\"hidden_size\": \"x\"}'; run 20 $bin/generate --model bj --prompt x; refused 'bj/config.json.*hidden_size'"
broken_index() {
    copy bj && mv bj/model.safetensors bj/part.safetensors && echo "$1" > bj/model.safetensors.index.json
    run 20 "$bin"/generate --model bj --prompt x
    refused 'bj/model.safetensors.index.json'
}
check "an error in the index of shards names its file" broken_index '{'
check "an index that names a missing shard names its file" broken_index '{"weight_map": {"model.norm.weight": "nowhere.safetensors"}}'
check "an index without a table names its file" broken_index '{"weight_map": 5}'
broken_state() {
    rm -rf resumed && $pretrain_stop --stop-after 10 > /dev/null 2>&1
    "$python" -c "
b = bytearray(open('resumed/training.safetensors', 'rb').read())
$1
open('resumed/training.safetensors', 'wb').write(b)"
    run 30 $pretrain_stop --resume
    refused 'resumed/training.safetensors'
}
check "a damaged header of a training state names its file" broken_state 'b[8] = 0'
check "a bit flip in a training state's tensors is seen" broken_state 'b[-400] ^= 1'
check "a NaN in a training state is refused" broken_state 'b[-400:-396] = b"\0\0\xc0\x7f"'

# ---- the library, misused, under sanitizers --------------------------------------------------------------------------
api_case() {
    wait $api || { grep -m 3 error api.log; return 1; }
    run 120 ./api "$1" base
    [ "$rc" -le 2 ] || { echo "exit status $rc"; return 1; }
    unsaid 'Sanitizer|runtime error' || return 1
    case $1 in
        fileempty) grep -q 'save "" -> -*[1-9]' out && grep -q 'write "" -> -*[1-9]' out || { echo "an empty path is taken"; return 1; } ;;
        sampling) grep '^T 1e-39 ' out | grep -qi temperature || { echo "1e-39 does not blame the temperature"; return 1; } ;;
        gpt2heads) grep -qiE 'nil.*(heads|head_dim)' out || { echo "no error that names the heads"; return 1; } ;;
        *) grep -qE "^(end|random|null)" out || { echo "did not come to its end"; return 1; } ;;
    esac
}
for one in fileempty clearnull sampling gpt2heads null log huge nested cbreset twice pending backnull afterreset random; do check "the library misused: $one" api_case $one; done

# ---- the converter ---------------------------------------------------------------------------------------------------
if "$python" -c 'import numpy' 2> /dev/null; then
    converted() {     # WORDS IN [OPTIONS]
        local words=$1
        shift
        rm -rf conv
        run 30 "$python" "$project"/tools/convert_weights.py "$1" conv "${@:2}"
        is "$rc" 1 "the exit status" && refused "$words" && is "$(grep -cv '^written' err)" 1 "the number of lines of the error" && is "$(ls -d conv* 2> /dev/null)" "" "what is left"
    }
    setting c1 '{"rope_scaling":"default"}'
    check "the converter on rope_scaling that is a text" converted 'c1/config.json: rope_scaling' c1
    setting c2 '{"eos_token_id":[]}'
    check "the converter on an empty eos_token_id" converted 'c2/config.json: eos_token_id' c2 --to gguf
    "$python" -c "
import zipfile
z = zipfile.ZipFile('lz.pt', 'w', zipfile.ZIP_LZMA)
z.writestr('a/data.pkl', b'\x80\x02}.' * 5000)
z.close()
b = bytearray(open('lz.pt', 'rb').read())
for i in range(60, 110): b[i] ^= 0x5a
open('lz.pt', 'wb').write(b)"
    check "the converter on a damaged LZMA archive" converted 'lz.pt' lz.pt
    copy c4
    "$python" -c "
import json
t = json.load(open('c4/tokenizer.json'))
t.update(pre_tokenizer='x', decoder={'type': 'ByteFallback'})
json.dump(t, open('c4/tokenizer.json', 'w'))"
    check "the converter on a pre_tokenizer that is a text" converted 'c4/tokenizer.json: pre_tokenizer' c4 --to gguf
else
    skip converter "$python has no numpy"
fi

# ---- models and data as people have them -----------------------------------------------------------------------------
records() { built jsonl && run 10 ./jsonl "$1"; accepted && is "$(head -n 1 out)" "$2 records" "the first line"; }
for name in plain bom blank; do check "$name.jsonl has 10 records" records "$cases/$name.jsonl" 10; done
check "overlong.jsonl has 11 records" records "$cases/overlong.jsonl" 11
whole_texts() {   # what a NUL stands in is not cut: it is whole, or refused by line and name
    built jsonl && run 10 ./jsonl "$cases/nul.jsonl"
    if [ "$rc" -ne 0 ]; then grep -q 'line 10: "question" has the character U.0000' out err; return; fi
    accepted && grep -a ' 9: q "read this file' out | grep -a '(66 bytes) gold "12" (2 bytes)'
}
check "a NUL does not cut question and answer" whole_texts
numbers="25 0.5 12345678901234567 1000000000000000000000 1e-07 0.30000000000000004 -7 1000000007 123456789.125 2432902008176640000"
other_numbers="26 0.6 12345678901234568 1000000000000000000001 2e-07 0.4 7 1000000008 123456789.25 2432902008176640001"
number_rewards() { built jsonl && run 10 ./jsonl "$cases/numbers.jsonl" $2; accepted && is "$(grep -c "reward of .*: $1\$" out)" 10 "the number of rewards of $1"; }
check "numbers as answers keep their digits" number_rewards 1 "$numbers"
check "other numbers are other answers" number_rewards 0 "$other_numbers"

if "$python" -c 'import numpy, safetensors, tokenizers' 2> /dev/null && "$python" "$cases/make_models.py" m > log 2>&1; then
    speaks() { run 60 "$bin"/generate --model "m/$1" --prompt 'the cat' --n 16 --max-tokens 60 --temperature 2; accepted && unsaid '\[PAD|id [0-9]+ has no'; }
    for model in m/base m/pad m/gap m/config-*; do model=${model#m/}; check "generate with the model $model" speaks "$model"; done
    steps() { built train && run 120 ./train "$@"; accepted && unsaid 'FAILED' && is "$(grep -c '^step ' out)" "$3" "the number of steps"; }
    check "three steps with a head padded beyond the tokenizer" steps m/pad "$cases/plain.jsonl" 3 24
    check "three steps with unused ids below an added token" steps m/gap "$cases/plain.jsonl" 3 24
    check "three steps on a file with a byte order mark" steps m/base "$cases/bom.jsonl" 3 24
    samples_above() { built train && run 120 ./train m/pad "$cases/plain.jsonl" 3 24; grep -E '^[1-9][0-9]* sampled ids lie above' out; }
    check "the padded head is sampled from" samples_above
    overlong() {      # told before the first step, or left out; never in the middle
        built train && run 200 ./train m/base "$cases/overlong.jsonl" 12 24
        unsaid FAILED || return 1
        if grep -q '^create:' out; then grep -iE '^create:.*(long|tokens|positions)' out; else accepted; fi
    }
    check "an over-long question never ends a run in the middle" overlong
    learns() { rm -rf s; run 60 "$bin"/sft --model m/base --data "$1" --out s --epochs 1; accepted && [ -f s/model.safetensors ]; }
    for file in "$cases"/{plain,bom,blank,inject}.jsonl m/{crlf,chat}.jsonl; do check "sft reads $(basename "$file")" learns "$file"; done
    no_nul() { rm -rf s; run 60 "$bin"/sft --model m/base --data "$1" --out s --epochs 1; refused 'line [0-9]+: .* U.0000' && is "$(ls s/model.safetensors 2> /dev/null)" "" "the model"; }
    for file in nul nul-sft; do check "sft refuses what a NUL would cut: $file.jsonl" no_nul "$cases/$file.jsonl"; done
    wrong_encoding() { run 20 "$@"; refused 'UTF|JSON|line 1|byte'; }
    check "sft says what is wrong with UTF-16" wrong_encoding "$bin"/sft --model m/base --data m/utf16.jsonl --out z
    check "thinktune says what is wrong with UTF-16" wrong_encoding "$bin"/thinktune --model m/base --data m/utf16.jsonl --end-token '<|end_of_text|>' --out z
    parts() { rm -rf z; run 30 "$bin"/sft --model m/base --data m/parts.jsonl --out z --epochs 1; [ "$rc" -eq 0 ] || refused 'content|line 1'; }
    check "sft on content in parts: learnt, or an error that names it" parts
    for file in empty tiny few; do
        check "pretrain on $file.txt: learnt, or an error that names it" eval "rm -rf z; run 30 $bin/pretrain --data m/$file.txt --out z $tiny --steps 2; [ \$rc -eq 0 ] || refused '$file.txt|too (short|small)'"
    done
    # Content is text, the template is control: with room for the one and not for the other, what happens tells which it was.
    "$python" - m "$cases" << 'END' > log 2>&1
import json, sys
from tokenizers import Tokenizer
base, cases = sys.argv[1:]
t = Tokenizer.from_file(f'{base}/base/tokenizer.json')
control = {'<|im_start|>', '<|im_end|>'}
def render(messages, content):
    n = 0
    for m in messages:
        n += 2 + len(t.encode(m['role'] + '\n', add_special_tokens=False).ids) + content(m['content']) + 1
    return n
plain = json.load(open(f'{base}/base/tokenizer.json'))
plain['added_tokens'] = []
for name in control:
    del plain['model']['vocab'][name]
plain['post_processor'] = None
no_special = Tokenizer.from_str(json.dumps(plain))
as_control = lambda text: len(t.encode(text, add_special_tokens=False).ids)
as_text = lambda text: len(no_special.encode(text, add_special_tokens=False).ids)
rows = [json.loads(line)['messages'] for line in open(f'{cases}/inject.jsonl')]
low, high = render(rows[0], as_control), render(rows[0], as_text)
print('learnt', low, high)
json.dump({'max_position_embeddings': (low + high) // 2}, open('between-learnt.json', 'w'))
user = [{'role': 'user', 'content': 'hi' + '<|im_end|>' * 20}]
low, high = render(user, as_control), render(user, as_text)
print('chat', low, high)
json.dump({'max_position_embeddings': (low + high) // 2}, open('between-chat.json', 'w'))
END
    content_learnt() { setting between "$(cat between-learnt.json)" m/base; run 30 "$bin"/sft --model between --data "$cases/inject.jsonl" --out z --epochs 1; cat out err | grep -E '[1-9][0-9]* left out|holds no example|positions' > /dev/null && ! grep ' 0 left out' out; }
    check "sft reads a control token within a message as text" content_learnt
    content_said() { setting between "$(cat between-chat.json)" m/base; run 30 "$bin"/generate --model between --chat --max-tokens 1 --prompt "hi$(printf '<|im_end|>%.0s' {1..20})"; refused 'conversation has'; }
    check "generate --chat reads a control token within a message as text" content_said
    rm -rf z s
else
    skip "models of make_models.py" "$python has no numpy, safetensors, tokenizers"
fi

# ---- rewards ---------------------------------------------------------------------------------------------------------
if [ -x "$bin/grade" ]; then
    grade_rows() {
        run 30 "$bin"/grade "$cases/rewards.jsonl"
        accepted && cp out graded.jsonl && "$python" - "$cases/rewards.jsonl" "$1" << 'END'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
given = [r for r in (json.loads(line) for line in open('graded.jsonl') if line.startswith('{')) if 'reward' in r][:len(rows)]
wrong = [f'{r["reward"]} of {r["answer"]!r}, {r["response"][-60:]!r}: {g["reward"]}, expected {r["want"]}' for r, g in zip(rows, given) if r['kind'] == sys.argv[2] and g['reward'] != r['want']]
print('\n'.join(wrong))
sys.exit(bool(wrong) or len(given) != len(rows))
END
    }
    for kind in $("$python" -c "import json, sys; print(*dict.fromkeys(json.loads(l)['kind'] for l in open(sys.argv[1])))" "$cases/rewards.jsonl"); do check "rewards of the kind $kind" grade_rows "$kind"; done
else
    check "rewards: build/grade is there" false
fi

# ---- hosts -----------------------------------------------------------------------------------------------------------
if localedef -i de_DE -f UTF-8 locales/de_DE.UTF-8 > log 2>&1 || [ -e locales/de_DE.UTF-8/LC_NUMERIC ]; then
    in_german() {
        built locale || return 1
        LC_ALL= LOCPATH=$dir/locales run 20 ./locale
        accepted && unsaid 'DIFF|NOT THERE' && grep -q 'printf gives 0,5' out && is "$(grep -c ': yes' out)" 3 "the number of yes"
    }
    check "a host with a decimal comma" in_german
else
    skip "a host with a decimal comma" "localedef made no de_DE.UTF-8"
fi
if [ -n "$static" ]; then
    static_run() {    # PROGRAM THREADS: as many, and the number that a dynamic program gives
        built "$1" "$1.c" -pthread && built "$1-static" "$1.c" -static -pthread || return 1
        run 60 "./$1"; accepted && cp out dynamic || return 1
        run 60 "./$1-static"; accepted && grep -qE "threads $2\$" out && cmp out dynamic
    }
    check "cc -static with as many threads as there are" static_run threads "$([ "$(nproc)" -gt 1 ] && echo '[1-9][0-9]*' || echo 1)"
    check "cc -static with four threads" static_run threads4 4
    static_alone() { built threads4-alone threads4.c -static && run 60 ./threads4-alone && accepted && grep '^loss' out; }
    check "cc -static without -pthread" static_alone
else
    skip "cc -static" "no static C library"
fi
check "after the macros of windows.h, as C" $cc -std=c99 -Wall -Wextra -Werror -I "$project" -fsyntax-only "$cases/windows_macros.c"
if command -v "$cxx" > /dev/null; then check "after the macros of windows.h, as C++" $cxx -std=c++11 -Wall -Wextra -Werror -I "$project" -fsyntax-only -x c++ "$cases/windows_macros.c"; else skip "after the macros of windows.h, as C++" "$cxx is not there"; fi
# It was written for version 0.1.0, whose two longest signatures are gone.
sed 's/tt_grpo_loss(l->ctx, logprobs, entropy, &rollouts, indices, rollouts.n, /tt_grpo_loss(l->ctx, logprobs, entropy, \&(tt_loss_batch){.rollouts = \&rollouts, .indices = indices, .n = rollouts.n}, /
     s/tt_think_augment(&rollouts, &teacher, l->tokenizer, &l->think, &l->grpo, l->end, step, t)/tt_think_augment(\&rollouts, \&(tt_augment){.teacher = \&teacher, .tokenizer = l->tokenizer, .end_token = l->end, .max_completion_length = l->grpo.max_completion_length, .step = step}, \&l->think, t)/' \
    "$cases/think-draft.c" > think-here.c
think_page() { built think think-here.c -Wall -Wextra -Werror && run 300 ./think && accepted; }
check "ThinkTuning on one page compiles and runs" think_page

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
