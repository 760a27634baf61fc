#!/bin/sh
# tests/test_mpi.sh: 1, 2 and 4 processes of the examples give the same results. MPICC, MPIRUN: those of the environment.
#   --gradient-parts 4   the same bytes
#   without it           weights within 1e-6 of one process, metrics within 5e-6: the shaping factor divides by a small probability
# pretrain and sft sum in many small blocks, thinktune in one.
# Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
: "${MPICC:=mpicc}" "${MPIRUN:=mpirun}"
if ! command -v "$MPICC" > /dev/null || ! command -v "${MPIRUN%% *}" > /dev/null; then
    echo "skip   test_mpi: $MPICC or $MPIRUN is not there"
    echo "0 passed, 0 failed"
    exit 0
fi
# One thread a process, more processes than cores, and root in a container: Open MPI asks for leave, MPICH reads none of it.
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe OMPI_MCA_mpi_yield_when_idle=1
dir=build/mpi
rm -rf $dir && mkdir -p $dir
. tests/verdict.sh
log=$dir/log

same() {      # file in A/ and B/, name
    cmp "$1" "$2" > $dir/log 2>&1
    verdict $? "$3: the same bytes"
}
gate_same() { # two folders of thinktune, name: what the gate found; its texts are those of rank 0's share
    for folder in "$1" "$2"; do grep -o '"gate":.*' "$folder/seed-1/base/result.json" > "$folder/gate" || : > "$folder/no-gate"; done
    [ ! -e "$1/no-gate" ] && cmp "$1/gate" "$2/gate" > $dir/log 2>&1
    verdict $? "$3: the gate finds the same"
}
near() {      # two model directories, name
    distance=$($dir/compare_models "$1" "$2" 2> $dir/log) && echo "distance ${distance}" > $dir/log
    awk -v d="${distance:-nan}" 'BEGIN { exit !(d + 0 == d && d < 1e-6) }'
    verdict $? "$3: weights $distance apart"
}
mpi() {       # processes program options...; what it says goes to the log
    n=$1; shift
    timeout 300 $MPIRUN -np "$n" "$@" > $dir/log 2>&1
    status=$?
    [ $status -eq 0 ] || verdict $status "$n processes: $*"
    return $status
}
numbers_near() {   # two files of JSON lines with the same keys, name: each number within 5e-6, relative or absolute
    tr ',{}' '\n\n\n' < "$1" | sed 's/.*://' > $dir/a
    tr ',{}' '\n\n\n' < "$2" | sed 's/.*://' > $dir/b
    paste $dir/a $dir/b | awk -F '\t' '
        function apart(x, y) { return x > y ? x - y : y - x }
        $1 != $2 { size = $1 < 0 ? -$1 : $1 + 0; if ($1 + 0 != $1 || $2 + 0 != $2 || apart($1, $2) > 5e-6 * (size > 1 ? size : 1)) { print NR ": " $0; bad = 1 } }
        END { exit bad || NR == 0 }' > $dir/log
    verdict $? "$3: metrics within 5e-6"
}

linked="-DLINKED_PUBLIC -include tests/linked.h"
for name in thinktune pretrain sft; do
    small=; [ $name = thinktune ] || small="-DPARALLEL_BLOCK=100"
    $MPICC -std=c99 -O1 -DTT_MPI $small $linked examples/$name.c build/thinktuning.o -o $dir/$name -lm > $dir/log 2>&1 || { verdict 1 "$MPICC compiles $name.c"; summary; exit 1; }
done
${CC:-cc} -std=c99 -O1 $linked tests/compare_models.c build/thinktuning.o -o $dir/compare_models -lm || exit 1
$MPIRUN --version 2>&1 | head -n 2

# ---- pretrain: a text of lines that count ----
awk 'BEGIN { for (i = 0; i < 1500; i++) print "line " i " of " i * 7 % 100 ", then " (i % 3 ? "left" : "right") "." }' > $dir/text
tiny="--data $dir/text --vocab-size 280 --hidden-size 32 --layers 1 --heads 2 --context 32 --steps 24 --batch-tokens 256 --eval-every 8"
for n in 1 2 4; do
    mpi $n $dir/pretrain $tiny --out $dir/parts-$n --gradient-parts 4
    mpi $n $dir/pretrain $tiny --out $dir/free-$n && grep 'validation' $dir/log > $dir/curve-$n
done
for n in 2 4; do
    same $dir/parts-1/model.safetensors $dir/parts-$n/model.safetensors "pretrain, 4 parts, $n processes"
    same $dir/parts-1/training.safetensors $dir/parts-$n/training.safetensors "pretrain, 4 parts, $n processes, moments"
    near $dir/free-1 $dir/free-$n "pretrain, $n processes"
    paste -d ' ' $dir/curve-1 $dir/curve-$n | awk '{ d = $5 - $10; if (d > 1e-4 || d < -1e-4) bad = 1 } END { exit bad || NR != 3 }' > $dir/log
    verdict $? "pretrain, $n processes: the loss curve"
done
mpi 2 $dir/pretrain $tiny --out $dir/resumed --gradient-parts 4 --stop-after 8
mpi 4 $dir/pretrain $tiny --out $dir/resumed --gradient-parts 4 --stop-after 16 --resume
mpi 1 $dir/pretrain $tiny --out $dir/resumed --gradient-parts 4 --resume
same $dir/parts-1/model.safetensors $dir/resumed/model.safetensors "pretrain, 2 processes, resumed by 4, then by 1"

# ---- sft: answers of different lengths ----
awk 'BEGIN { for (i = 0; i < 60; i++) { a = ""; for (k = 0; k <= i % 5; k++) a = a " left"; print "{\"question\":\"line " i "\",\"answer\":\"" a "\"}" } }' > $dir/answers.jsonl
tiny="--model $dir/parts-1 --data $dir/answers.jsonl --template {question}: --epochs 1 --batch-tokens 120"
for n in 1 2 4; do
    mpi $n $dir/sft $tiny --out $dir/sft-parts-$n --gradient-parts 4
    mpi $n $dir/sft $tiny --out $dir/sft-free-$n
done
for n in 2 4; do
    same $dir/sft-parts-1/model.safetensors $dir/sft-parts-$n/model.safetensors "sft, 4 parts, $n processes"
    near $dir/sft-free-1 $dir/sft-free-$n "sft, $n processes"
done

# ---- thinktune: base, GRPO, ThinkTuning, SDPO (whose counts are those of all processes), evaluation ----
tiny="--quick --steps 3 --pretrain-steps 30 --pretrain-tokens 200 --hidden 32 --inner 64 --heads 2 --layers 1 --context 160 --questions 16 --gate-questions 24
      --prompts 4 --num-generations 4 --max-length 40 --teacher-length 40 --init-pct 0.5 --min-pct 0.5
      --arms grpo,thinktune,sdpo"
for n in 1 2 4; do mpi $n $dir/thinktune $tiny --out $dir/think-$n --gradient-parts 4; done
for n in 2 4; do
    for file in metrics.jsonl summary.json seed-1/grpo/model.safetensors seed-1/thinktune/model.safetensors; do
        same $dir/think-1/$file $dir/think-$n/$file "thinktune, 4 parts, $n processes, $file"
    done
    gate_same $dir/think-1 $dir/think-$n "thinktune, $n processes"
done
lines=$(wc -l < $dir/think-4/metrics.jsonl)
echo "metrics.jsonl has $lines lines" > $dir/log
[ "$lines" -eq 9 ] && grep -q '"feedback/no_context":16' $dir/think-4/metrics.jsonl
verdict $? "thinktune, 4 processes: one of them writes"
# ---- thinktune from one base, which is sometimes right: it has learnt to guess between two numbers ----
awk 'BEGIN { for (i = 0; i < 5000; i++) print "line " i " of " i * 7 % 100 ", then " (i % 3 ? "left" : "right") "." }' > $dir/long-text
awk 'BEGIN { for (i = 0; i < 200; i++) print "{\"question\":\"line " i "\",\"answer\":\"#### " 1 + (i * i + i % 7) % 5 % 2 "\"}" }' > $dir/numbers.jsonl
mpi 1 $dir/pretrain --data $dir/long-text --vocab-size 280 --hidden-size 32 --layers 1 --heads 2 --context 2048 --steps 6 --batch-tokens 2048 --out $dir/base
mpi 1 $dir/sft --model $dir/base --data $dir/numbers.jsonl --template {question}: --epochs 5 --batch-tokens 200 --lr 0.005 --out $dir/guesses
tiny="--quick --steps 3 --model $dir/guesses --data $dir/numbers.jsonl --prompt {question}: --end-token <|endoftext|> --questions 8 --gate-questions 13
      --prompts 8 --num-generations 8 --max-length 12 --teacher-length 8 --init-pct 0.25 --min-pct 0.25"
for n in 1 2 4; do
    mpi $n $dir/thinktune $tiny --out $dir/rl-$n
    mpi $n $dir/thinktune $tiny --out $dir/rl-parts-$n --gradient-parts 4
done
grep -c '"reward_std":0\.' $dir/rl-1/metrics.jsonl > $dir/log
[ "$(cat $dir/log)" -ge 4 ]; verdict $? "thinktune: rewards that differ, so that there is something to learn"
for n in 2 4; do
    numbers_near $dir/rl-1/metrics.jsonl $dir/rl-$n/metrics.jsonl "thinktune, $n processes"
    for arm in grpo thinktune; do
        near $dir/rl-1/seed-1/$arm $dir/rl-$n/seed-1/$arm "thinktune, $n processes, $arm"
        same $dir/rl-parts-1/seed-1/$arm/model.safetensors $dir/rl-parts-$n/seed-1/$arm/model.safetensors "thinktune, 4 parts, $n processes, $arm"
    done
    same $dir/rl-parts-1/metrics.jsonl $dir/rl-parts-$n/metrics.jsonl "thinktune, 4 parts, $n processes, metrics"
    gate_same $dir/rl-1 $dir/rl-$n "thinktune on given questions, $n processes"
done

# ---- a process that goes takes the others with it ----
long="--data $dir/text --vocab-size 280 --hidden-size 32 --layers 1 --heads 2 --context 32 --steps 10000000 --out $dir/dead"
timeout 60 $MPIRUN -np 1 $dir/pretrain $long : -np 1 $dir/pretrain $long --data $dir/nothing > $dir/log 2>&1
status=$?
[ $status -ne 0 ] && [ $status -ne 124 ] && grep -q 'rank 1 of 2 left early' $dir/log && grep -q "$dir/nothing" $dir/log
verdict $? "a process that fails ends the job and says why"
timeout 60 $MPIRUN -np 1 $dir/pretrain $long : -np 1 sh -c "echo \$\$ > $dir/pid; exec $dir/pretrain $long" > $dir/log 2>&1 &
job=$!
for wait in 1 2 3 4 5 6 7 8 9 10; do [ -s $dir/pid ] && grep -q 'step 10' $dir/log && break; sleep 1; done
kill -9 "$(cat $dir/pid)"
wait $job
status=$?
echo "exit status $status" >> $dir/log
[ $status -ne 0 ] && [ $status -ne 124 ]
verdict $? "a process that is killed ends the job"

summary
