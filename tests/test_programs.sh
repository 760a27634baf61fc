#!/bin/sh
# tests/test_programs.sh: what the programs of build/ do with folders, settings, lengths and terminals that are not as they should
# be. Everything is made in build/programs. Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
bin=$(pwd)/build
rm -rf build/programs && mkdir -p build/programs && cd build/programs || exit 1
passed=0 failed=0 good=1 name=

begin() { end; name=$1 good=1; }
end() {
    [ -n "$name" ] || return
    if [ $good -eq 1 ]; then passed=$((passed + 1)); echo "ok $name"; else failed=$((failed + 1)); echo "FAIL $name"; fi
    name=
}
bad() { good=0; printf '  %s\n' "$*"; tail -n 5 out err 2> /dev/null | sed 's/^/    /'; }
run() { "$@" > out 2> err < /dev/null; rc=$?; }
works() { run "$@"; [ $rc -eq 0 ] || bad "exit $rc of $*"; }
refuses() {   # text of the error, command
    text=$1; shift
    run "$@"
    { [ $rc -gt 0 ] && [ $rc -lt 126 ]; } || bad "exit $rc of $*, expected an error"
    grep -qF -- "$text" err || bad "no \"$text\" from $*"
}
said() { grep -qF -- "$1" out err || bad "not said: $1"; }
with() {   # command, option with its value: the command with it in place of its own
    awk -v command="$1" -v other="$2" 'BEGIN { n = split(command, c, " "); split(other, o, " "); for (i = 1; i <= n; i++) { if (c[i] == o[1]) { i++ } else { printf "%s ", c[i] } } print other }'
}
same() { cmp -s "$1" "$2" || bad "$1 and $2 differ"; }
narrow() {   # columns: no line of out is wider
    awk -v most="$1" '{ gsub(/[\200-\277]/, ""); if (length($0) > most) { print; wide = 1 } } END { exit wide }' out > wide || bad "wider than $1: $(head -n 1 wide)"
}

words='BEGIN { n = split("the cat sat on a mat and dog ran over hill with seven old men who like to eat fresh bread in the sun by river", w, " ")
    for (i = 0; i < 1500; i++) { t = ""; for (k = 0; k < 12; k++) { s = (s * 75 + 74 + seed) % 65537; t = t w[1 + s % n] " " } print t "." } }'
LC_ALL=C awk -v seed=0 "$words" > text.txt
LC_ALL=C awk -v seed=5 "$words" > other.txt
awk 'BEGIN { for (i = 0; i < 60; i++) { printf "{\"question\": \"the cat %d\", \"answer\": \"%d\"}\n", i, i } }' > q.jsonl
awk 'BEGIN { for (i = 0; i < 60; i++) { printf "{\"question\": \"a dog %d\", \"answer\": \"%d\"}\n", i, i } }' > q2.jsonl
{ head -n 7 q.jsonl; awk 'BEGIN { printf "{\"question\": \""; for (i = 0; i < 90; i++) { printf "the cat sat " } printf "\", \"answer\": \"1\"}\n" }'; tail -n 30 q.jsonl; } > long.jsonl
tiny="--hidden-size 16 --layers 1 --heads 2 --context 32 --batch-tokens 128 --vocab-size 300"
quick="--quick --steps 2 --prompts 2 --num-generations 2 --max-length 16 --questions 4 --gate-questions 2 --teacher-length 8"
pretrain="$bin/pretrain --data text.txt $tiny --eval-every 5"
sft="$bin/sft --model base --data q.jsonl --batch-tokens 128"
rl="$bin/thinktune --model base --end-token <|endoftext|> $quick"
"$bin/pretrain" --data text.txt --out base --vocab-size 320 --hidden-size 16 --layers 1 --heads 2 --context 64 --steps 20 --batch-tokens 512 > out 2> err ||
    { echo "FAIL no model to begin with"; cat err; echo "0 passed, 1 failed"; exit 1; }

begin a_sample_ends_where_the_context_ends
works "$bin/generate" --model base --prompt "the cat"
refuses "--max-tokens is 63, but beside a prompt of" "$bin/generate" --model base --prompt "the cat" --max-tokens 63
refuses "the model's context ends at 64" "$bin/generate" --model base --prompt "the cat" --max-tokens 64
works "$bin/generate" --model base --prompt "the cat" --max-tokens 8 --n 2
refuses "leaves no room in the model's context of 64" "$bin/generate" --model base --prompt "$(head -n 20 text.txt)"

begin a_line_of_70000_bytes_is_one_turn
cp -r base wide-base && sed 's/"max_position_embeddings": *64/"max_position_embeddings": 200000/' base/config.json > wide-base/config.json
awk 'BEGIN { for (i = 0; i < 17500; i++) { printf "the " } print "" }' > line
"$bin/generate" --model wide-base --chat --format plain --max-tokens 2 < line > out 2> err || bad "exit $?"
[ "$(grep -c '^>' out)" -eq 2 ] || bad "turns: $(grep -c '^>' out)"      # the answer, and the end of the input

begin an_output_that_cannot_be_is_refused_before_any_work
echo precious > file && cp file kept
for command in "$pretrain --steps 5" "$sft" "$bin/thinktune $quick" "$rl --data q.jsonl"; do
    refuses "--out file is there and no folder" $command --out file
    [ -s out ] && grep -qE 'loss|examples' out && bad "it worked first"
    refuses "--out is empty" $command --out ""
    refuses "file" $command --out file/x
    refuses "bytes, expected at most" $command --out "$(awk 'BEGIN { for (i = 0; i < 450; i++) { printf "0123456789" } }')"
done
same file kept

begin a_folder_belongs_to_one_program_at_a_time
"$bin/pretrain" --data text.txt $tiny --steps 1000000 --eval-every 5 --out owned > owner 2>&1 &
owner=$!
for i in 1 2 3 4 5 6 7 8 9 10; do [ -f owned/training.safetensors ] || sleep 1; done
refuses "another run is writing to owned" $pretrain --steps 5 --out owned
refuses "another run is writing to owned" $sft --out owned
refuses "another run is writing to owned" "$bin/thinktune" $quick --out owned
kill -9 $owner
wait $owner 2> /dev/null
works $pretrain --steps 5 --out owned      # the lock goes with its owner

begin a_run_goes_on_only_under_its_own_settings
works $pretrain --steps 20 --out whole
works $pretrain --steps 20 --stop-after 10 --out parts
for other in "--seed 9" "--lr 1e-5" "--data other.txt" "--hidden-size 32" "--steps 30" "--gradient-parts 2"; do
    refuses "parts began with \"${other%% *} " $(with "$pretrain --steps 20 --out parts --resume" "$other")
done
cp text.txt moved.txt
works $(with "$(with "$pretrain --steps 20 --out parts --resume" "--data moved.txt")" "--eval-every 3")      # the same bytes at another place
same whole/model.safetensors parts/model.safetensors
works $sft --epochs 2 --out sft-whole
works $sft --epochs 2 --stop-after 3 --out sft-parts
for other in "--seed 9" "--lr 1e-5" "--data q2.jsonl" "--lora-rank 2" "--epochs 3" "--model whole"; do
    refuses "sft-parts began with \"${other%% *} " $(with "$sft --epochs 2 --out sft-parts --resume" "$other")
done
works $sft --epochs 2 --out sft-parts --resume
same sft-whole/model.safetensors sft-parts/model.safetensors
refuses "parts began with \"pretrain " $sft --out parts --resume
works $rl --data q.jsonl --out rl
for other in "--lr 1e-5" "--data q2.jsonl" "--steps 3" "--on-long error"; do refuses "rl began with \"${other%% *} " $(with "$rl --data q.jsonl --out rl --resume" "$other"); done
works $rl --data q.jsonl --out rl --resume

begin nothing_is_removed_where_settings_are_missing
rm parts/settings.txt sft-parts/settings.txt rl/settings.txt
cp parts/training.safetensors p && cp sft-parts/training.safetensors s && cp rl/metrics.jsonl m
for resume in "" --resume; do
    refuses "parts/settings.txt" $pretrain --steps 20 --out parts $resume
    refuses "sft-parts/settings.txt" $sft --out sft-parts $resume
    refuses "rl/settings.txt" $rl --data q.jsonl --out rl $resume
done
same parts/training.safetensors p && same sft-parts/training.safetensors s && same rl/metrics.jsonl m

begin a_new_run_does_not_go_on_from_an_old_checkpoint
works $pretrain --steps 20 --stop-after 10 --out anew
works $pretrain --steps 20 --stop-after 5 --seed 3 --out anew
said "begins anew in anew; the checkpoint there is removed"
works $pretrain --steps 20 --seed 3 --out anew --resume
works $pretrain --steps 20 --seed 3 --out whole3
same whole3/model.safetensors anew/model.safetensors
works $pretrain --steps 5 --out nothing --resume
said "nothing holds no checkpoint to go on from"

begin updates_that_are_not_finite_are_said_and_end_the_run
cp -r base poisoned
{ head -c -4 base/model.safetensors; printf '\000\000\300\177'; } > poisoned/model.safetensors
works $sft --epochs 1 --out kept-model && cp kept-model/model.safetensors good.safetensors
for command in "$sft --epochs 1" "$sft --epochs 20 --save-every 1" "$sft --epochs 20 --stop-after 3" "$sft --epochs 1 --lora-rank 2"; do
    refuses "left out" $(with "$command --out kept-model" "--model poisoned")
    said "the update is left out, a gradient is not finite"
    same kept-model/model.safetensors good.safetensors
    [ ! -e kept-model/training.safetensors ] || bad "a checkpoint of nothing"
done
refuses "not finite" $(with "$rl --data q.jsonl --out kept-rl" "--model poisoned")

begin what_is_too_long_is_left_out_and_counted_or_refused
long="$(with "$sft --out long-sft" "--data long.jsonl")"
works $long
said "1 left out"
refuses "long.jsonl: line 8 has" $long --on-long error
works $rl --data long.jsonl --out long-rl
said "1 of 38 questions are left out"
refuses "the first in line 8, are longer than" $rl --data long.jsonl --out long-rl2 --on-long error
[ ! -e long-rl2/seed-1 ] || bad "it worked first"
refuses "leaves no room for a prompt in the model's 64 positions" $(with "$rl --data long.jsonl --out long-rl3" "--max-length 64")
refuses '--on-long is "drop"' $long --on-long drop

begin lines_fit_the_terminal
for columns in 80 60; do
    export COLUMNS=$columns
    works "$bin/thinktune" $quick --seeds 2 --arms grpo,thinktune,formula,luffy,off --out narrow
    narrow $columns
    said "expected time of the whole run: "
    said "own reward 0."
    works $rl --data q.jsonl --out narrow-rl
    narrow $columns
    works $sft --epochs 10 --out narrow-sft
    narrow $columns
done
unset COLUMNS
if command -v python3 > /dev/null; then      # on a terminal the line is rewritten: no part of it may be wider
    works python3 - "$bin/thinktune" $quick --seeds 2 --out narrow-tty <<'PYTHON'
import fcntl, os, pty, re, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    os.environ.pop("COLUMNS", None)
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 72, 0, 0))
text = b""
while True:
    try:
        got = os.read(fd, 65536)
    except OSError:
        break
    if not got:
        break
    text += got
status = os.waitpid(pid, 0)[1]
lines = re.split(rb"[\r\n]+", re.sub(rb"\x1b\[K", b"", text))
lines = lines[2:]      # the first are printed before the width is set
wide = [line for line in lines if len(line.decode()) > 72]
sys.exit(status != 0 or b"left" not in text or bool(wide) and print(wide[0]) is None)
PYTHON
fi

begin a_run_depends_on_no_variable_of_its_surroundings
works "$bin/thinktune" $quick --out with
said "thinktune does as its base: 1 of 1 seeds"
run env -i "$bin/thinktune" $quick --out without
[ $rc -eq 0 ] || bad "exit $rc without any variable"
for file in summary.json metrics.jsonl report.html; do same with/$file without/$file; done

begin the_report_explains_itself
works "$bin/thinktune" $quick --steps 4 --out report
for text in 'name="viewport"' prefers-color-scheme 'role="img" aria-label="' '<dt>correction</dt>' 'id="settings"' '--init-pct 0.25' 'advantage '; do
    grep -qF -- "$text" report/report.html || bad "no $text in the report"
done
grep -vF 'xmlns="http://www.w3.org/2000/svg"' report/report.html | grep -qE '(src|href)="?(https?:)?//|<script|@import' && bad "the report needs a network or scripts"
[ "$(grep -c '<summary>step ' report/report.html)" -eq 8 ] || bad "steps: $(grep -c '<summary>step ' report/report.html), expected 4 of each arm"
for arm in grpo thinktune; do [ "$(wc -l < report/seed-1/$arm/rollouts.jsonl)" -eq 4 ] || bad "rollouts of $arm"; done

begin controls_and_questions_out_of_domain_stand_beside_the_arms
head -n 5 q2.jsonl > shift.jsonl
printf '{"role": "user", "content": "cat"}\n{"role": "assistant", "content": "1 and 1 are 2"}\n' > worked.jsonl
controls="$rl --data q.jsonl --arms grpo,thinktune,sft,worked --shift shift.jsonl --worked worked.jsonl --seeds 2"
works $controls --arm-lr grpo=1e-3,sft=1e-5 --out controls
said "seed 2  worked"
for part in shift_accuracy '"sft":{"num_tokens":[1-9]' '"worked":{"num_tokens":0,'; do grep -q "$part" controls/summary.json || bad "no $part in the summary"; done
[ "$(wc -l < controls/metrics.jsonl)" -eq 8 ] || bad "steps: $(wc -l < controls/metrics.jsonl), expected 2 of 2 arms and 2 seeds"
rm controls/seed-2/sft/result.json controls/seed-2/thinktune/result.json && cp controls/summary.json first.json
works $controls --arm-lr grpo=1e-3,sft=1e-5 --out controls --resume
same first.json controls/summary.json
[ "$(wc -l < controls/metrics.jsonl)" -eq 8 ] || bad "steps after --resume: $(wc -l < controls/metrics.jsonl)"
refuses '--arm-lr is "luffy=1e-3", expected an arm of --arms' $controls --arm-lr luffy=1e-3 --out none
refuses '--arm-lr is "grpo=x", expected an arm of --arms' $controls --arm-lr grpo=x --out none
works $(with "$controls" "--arms worked") --out untrained
[ ! -e untrained/metrics.jsonl ] && grep -q '"rescue_rate":' untrained/summary.json || bad "a run without training: $(ls untrained)"
refuses "--worked means nothing without the arm worked" $(with "$controls --out none" "--arms grpo")
refuses "--shift means nothing without --data" "$bin/thinktune" $quick --shift shift.jsonl --out none
refuses "--separator means nothing without --data" "$bin/thinktune" $quick --separator " " --out none

begin think_c_ends_with_two_verdicts
works "$bin/think" 1 100 2
[ "$(tail -n 2 out | grep -cE '^(GRPO|ThinkTuning): of 100 new questions')" -eq 2 ] || bad "its last lines"
grep -qE '^  wait +teacher ' out || grep -qE ' wait +teacher ' out || bad "no table of a guided response"

begin too_little_memory_is_an_error
ends=
for limit in 6000 12000 20000 30000 40000 60000 100000 200000; do
    (ulimit -v $limit; exec "$bin/thinktune" --quick --steps 1 --threads 1 --out memory) > out 2> err < /dev/null
    rc=$?
    ends="$ends $rc"
    { [ $rc -lt 128 ] && [ $rc -ne 134 ]; } || bad "exit $rc with $limit KB"
    [ $rc -eq 0 ] || [ -s err ] || bad "nothing said with $limit KB"
done
case $ends in *" 1"*0) ;; *) echo "  ends:$ends" ;; esac

begin closed_streams_keep_out_of_files
works "$bin/thinktune" $quick --out open
"$bin/thinktune" $quick --out closed <&- >&- 2>&-
[ $? -eq 1 ] || bad "exit $? with all streams closed"      # what it prints is lost
[ ! -s closed/lock ] || bad "text in the lock: $(head -c 60 closed/lock)"
for file in metrics.jsonl summary.json settings.txt; do same open/$file closed/$file; done
$pretrain --steps 5 --out closed-pretrain > out 2> err >&- && bad "a lost output is no success"
said "cannot write standard output"
[ ! -s closed-pretrain/lock ] || bad "text in the lock: $(head -c 60 closed-pretrain/lock)"
works "$bin/generate" --model closed-pretrain --prompt "the cat" --max-tokens 4

begin an_output_that_is_lost_is_an_error_with_its_reason
full=
if mknod full c 1 7 2> /dev/null; then full=full; fi
for to in $full closed; do
    for command in "generate --model base --prompt cat --max-tokens 4" "generate --model base --prompt cat --max-tokens 4 --n 2" "tokenize inspect --tokenizer base text.txt" "generate --help"; do
        if [ $to = full ]; then "$bin"/$command > full 2> err; else "$bin"/$command 2> err >&-; fi
        [ $? -eq 1 ] && grep -q "cannot write standard output: " err || bad "$command to $to: $(cat err)"
    done
done

begin a_folder_that_cannot_be_written_is_refused_before_any_work
if command -v setpriv > /dev/null && setpriv --reuid=65534 --regid=65534 --clear-groups true 2> /dev/null; then
    mkdir -p denied/kept && touch denied/kept/lock && chmod 666 denied/kept/lock && chmod 555 denied denied/kept
    for out in denied denied/new denied/kept; do
        for command in "$pretrain --steps 5" "$sft" "$bin/thinktune $quick"; do
            refuses "Permission denied" setpriv --reuid=65534 --regid=65534 --clear-groups $command --out $out
            grep -qE 'loss|examples|model of' out && bad "it worked first"
        done
    done
else echo "  left out: no other user to be"; fi

begin what_killed_runs_left_is_removed
mkdir -p stale/seed-1/grpo stale/other && touch stale/other/lock
for folder in stale stale/seed-1/grpo stale/other; do touch $folder/tt-0123456789abcdef.tmp; done
touch stale/tt-notes.tmp
works $pretrain --steps 5 --out stale
[ ! -e stale/tt-0123456789abcdef.tmp ] && [ ! -e stale/seed-1/grpo/tt-0123456789abcdef.tmp ] || bad "they are still there"
[ -e stale/tt-notes.tmp ] && [ -e stale/other/tt-0123456789abcdef.tmp ] || bad "what is not its own is gone"

begin a_run_stops_at_once_where_it_should_have
works $pretrain --steps 20 --stop-after 10 --out early
cp early/training.safetensors ten
for at in 5 10; do
    works $pretrain --steps 20 --stop-after $at --out early --resume
    said "stands at step 10 already"
    same early/training.safetensors ten
done
works $sft --epochs 2 --stop-after 3 --out early-sft
cp early-sft/training.safetensors three
works $sft --epochs 2 --stop-after 2 --out early-sft --resume
said "stopped at step 3"
same early-sft/training.safetensors three

begin a_run_goes_on_only_beside_its_own_model
works $pretrain --steps 20 --out straight
works $pretrain --steps 20 --stop-after 10 --out swapped
for file in config.json tokenizer.json; do
    cp swapped/$file mine && { sed 's/"rms_norm_eps": *[0-9.e-]*/"rms_norm_eps": 0.001/' mine; echo; } > swapped/$file
    refuses "swapped/$file is not the one" $pretrain --steps 20 --out swapped --resume
    rm swapped/$file
    refuses "$file" $pretrain --steps 20 --out swapped --resume
    cp mine swapped/$file
done
cp swapped/model.safetensors mine && cp straight/model.safetensors swapped/model.safetensors
works $pretrain --steps 20 --stop-after 10 --out swapped --resume
same swapped/model.safetensors mine      # the checkpoint's
rm swapped/model.safetensors
works $pretrain --steps 20 --out swapped --resume
same straight/model.safetensors swapped/model.safetensors

begin a_checkpoint_beyond_its_run_is_refused
works $pretrain --steps 20 --stop-after 10 --out beyond
works $sft --epochs 2 --stop-after 20 --out beyond-sft
works "$bin/thinktune" $quick --arms grpo --out beyond-rl
rm beyond-rl/seed-1/grpo/result.json
sed -i.was 's/^--steps 20$/--steps 8/' beyond/settings.txt
refuses "step is 10, expected a whole number in 0..8" $pretrain --steps 8 --out beyond --resume
sed -i.was 's/^--epochs 2$/--epochs 1/' beyond-sft/settings.txt
refuses "epoch is 1, expected a whole number in 0..0" $sft --epochs 1 --out beyond-sft --resume
sed -i.was 's/^--steps 2$/--steps 1/' beyond-rl/settings.txt
refuses "it is of step 2, the run ends with step 1" $(with "$bin/thinktune $quick --arms grpo --out beyond-rl --resume" "--steps 1")

begin options_mean_something_or_are_refused
works $pretrain --steps 5 --steps 6 --out last-counts
grep -q "^--steps 6$" last-counts/settings.txt || bad "of an option given twice the last does not count"
for number in " 4" 0x10 1e1 4.0 "" "4 " inf nan; do
    refuses "--max-tokens is \"$number\"" "$bin/generate" --model base --prompt cat --max-tokens "$number"
    refuses "--vocab-size is \"$number\"" "$bin/tokenize" train --input text.txt --out none.json --vocab-size "$number"
done
for number in " 0.5" 0x1 inf nan ""; do refuses "--temperature is \"$number\"" "$bin/generate" --model base --prompt cat --temperature "$number"; done
works "$bin/generate" --model base --prompt cat --max-tokens 4 --temperature 5e-1
for option in "--format chatml" "--system be" "--date today" --parse-content; do refuses "${option%% *} means nothing without --chat" "$bin/generate" --model base --prompt cat $option; done
for option in "--temperature 2" "--top-k 5" "--top-p 0.5" "--min-p 0.5"; do refuses "${option%% *} means nothing with --greedy" "$bin/generate" --model base --prompt cat --greedy $option; done
refuses "--format means nothing with data without messages" $sft --format chatml --out none
for option in --merge --map "--lora-alpha 4"; do refuses "${option%% *} means nothing without --lora-rank" $sft $option --out none; done
refuses "--end-token means nothing without --data" "$bin/thinktune" $quick --end-token x --out none
refuses "rank is 65536, expected at most 16" $sft --lora-rank 65536 --out none

begin a_folder_without_a_name_is_no_root
refuses "the name of its folder is empty" "$bin/generate" --model "" --prompt cat
refuses "the name of its folder is empty" "$bin/generate" --model base --lora "" --prompt cat
refuses "the name of its folder is empty" "$bin/sft" --model "" --data q.jsonl --out none
refuses "the name of its folder is empty" "$bin/thinktune" $quick --model "" --data q.jsonl --end-token x --out none
refuses "--tokenizer is empty" "$bin/tokenize" encode --tokenizer "" text.txt

begin sft_says_what_stands_where_a_text_should
line() {   # text of the error, a line of JSON
    { head -n 2 q.jsonl; printf '%s\n' "$2"; } > odd.jsonl
    refuses "odd.jsonl line 3$1" "$bin/sft" --model base --data odd.jsonl --out odd
}
line ': "question" is a number, expected a text' '{"question": 5, "answer": "1"}'
line ': "answer" is true or false, expected a text or a number' '{"question": "a", "answer": true}'
line ': "completion" is a list, expected a text or a number' '{"prompt": "a", "completion": [1]}'
line ': it is a list, expected an object' '[1, 2]'
line ': it is a number, expected an object' '5'
line ': "content" is null, expected a text' '{"messages": [{"role": "user", "content": null}]}'
line ' column 15: the byte 0xFF is no UTF-8' "$(printf '{"question": "\377", "answer": "1"}')"
awk 'BEGIN { for (i = 0; i < 40; i++) { printf "{\"problem\": \"the cat %d\", \"answer\": %d}\n", i, i } }' > numbers.jsonl
works "$bin/sft" --model base --data numbers.jsonl --epochs 1 --batch-tokens 128 --out numbers
works $rl --data numbers.jsonl --out numbers-rl

begin tokenize_names_what_is_no_id
odd() { printf -- "$2" > ids; refuses "$1" "$bin/tokenize" decode --tokenizer base ids; }
odd '"\x00" at byte 0 is no token id' '\000\000\000'
odd '"\x00" at byte 3 is no token id' '5 6\000'
odd '"\x1B\xFFab" at byte 2' '5 \033\377ab\ncd'
odd '"-5" at byte 0' '-5'
odd '"99999999999999999999" at byte 0' '99999999999999999999999'
: > empty.txt
refuses "the text is empty" "$bin/tokenize" train --input empty.txt --vocab-size 300 --out nothing.json
[ ! -e nothing.json ] || bad "a tokenizer of nothing"
printf 'the\000cat\n' > line
"$bin/generate" --model base --chat --format plain --max-tokens 2 < line > out 2> err && bad "a turn with a byte 0"
said "a line has a byte 0"

begin nothing_waits_at_a_pipe
mkdir -p pipes && mkfifo pipes/config.json pipes/q.jsonl
refuses "it is a pipe" timeout 20 "$bin/generate" --model pipes --prompt cat
refuses "it is a pipe" timeout 20 "$bin/thinktune" $quick --model base --data pipes/q.jsonl --end-token x --out none-rl

end
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
