#!/usr/bin/env bash
# tests/gpu_proof.sh: what a GPU has to show, in at most 8 minutes on one H100 or H200 (make gpu-proof). Each step has a time
# limit of its own and leaves its result, build/gpu-proof/NN-name.log and a line of build/gpu-proof/summary, before the next
# one begins, so that a run that is cut short proves what it reached. Steps go on after one that fails.
#
#   GPU_PROOF_DRY=1     the rehearsal, without a device: the same steps with the same commands, on the emulated device of
#                       tests/cuda_device.cpp and with its smallest sizes; tools of CUDA are only looked for
#   GPU_PROOF_OUT=dir   instead of build/gpu-proof
#   GPU_PROOF_SECONDS=n instead of 480: a step that would begin later is left out, and said so
# Programs are compiled while the first tests run, and so is what PyTorch compiles. PYTHON has PyTorch; without it, its steps are skipped by name.
# Exit status 1 if a step failed.
set -u
cd "$(dirname "$0")/.." || exit 1
dry=${GPU_PROOF_DRY:-0}
out=${GPU_PROOF_OUT:-build/gpu-proof}
seconds=${GPU_PROOF_SECONDS:-480}
python=${PYTHON:-python3}
jobs=$(nproc 2> /dev/null || echo 2)
dir=build/cuda
[ "$dry" = 1 ] && dir=build/emulated
rm -rf "$out"
mkdir -p "$out"
failed=0 passed=0 skipped=0 number=0
export TT_BACKEND=cuda

note() { echo "$*" | tee -a "$out/summary"; }

# call SECONDS COMMAND...: functions of this script too, all that they start included; status 124 where the time is over.
call() {
    local limit=$1 child watch status
    shift
    set -m
    "$@" &
    child=$!
    { sleep "$limit"; kill -TERM -- "-$child"; sleep 5; kill -KILL -- "-$child"; } 2> /dev/null &
    watch=$!
    disown "$watch"                         # whose end is no news
    set +m
    wait "$child"
    status=$?
    kill -KILL -- "-$watch" 2> /dev/null
    [ $status -eq 143 ] && status=124
    return $status
}

# step NAME LIMIT COMMAND...: its output goes to a file; the verdict, the time and its last line to the summary.
step() {
    local name=$1 limit=$2 log status start=$SECONDS
    shift 2
    number=$((number + 1))
    log=$out/$(printf %02d $number)-$name.log
    if [ $((SECONDS + 5)) -gt "$seconds" ]; then
        skipped=$((skipped + 1))
        note "skip $name: $SECONDS of $seconds s are gone"
        return
    fi
    [ $((SECONDS + limit)) -le "$seconds" ] || limit=$((seconds - SECONDS))
    call "$limit" "$@" > "$log" 2>&1
    status=$?
    case $status in
        0) passed=$((passed + 1)); note "ok   $name ($((SECONDS - start)) s): $(tail -n 1 "$log")" ;;
        77) skipped=$((skipped + 1)); note "skip $name: $(tail -n 1 "$log")" ;;
        *) failed=$((failed + 1)); note "FAIL $name ($((SECONDS - start)) s, exit status $status): $(tail -n 1 "$log")" ;;
    esac
    sync "$log" "$out/summary" 2> /dev/null
}

# ---- what a step is ----
environment() {
    uname -a
    nproc
    git log -1 --format='commit %h %s' 2> /dev/null
    nvcc --version | tail -n 2
    "$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.is_available())' 2> /dev/null || echo 'no torch'
    if [ "$dry" = 1 ]; then echo 'rehearsal: emulated device'; return 0; fi
    nvidia-smi && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
}

# For the device that is here, which is what takes the least time.
compile() { make -s -k -j"$jobs" CUDA_ARCH=-arch=native "$@" && echo "compiled"; }

# tests KERNELS PROGRAM...: each with these kernels; fails if one does.
tests() { TT_CUDA_KERNELS=$1 tests/run.sh "${@:2}"; }

# A tool of CUDA where there is one, else status 77.
tool() {
    local path
    path=$(command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" 2> /dev/null) || { echo "no $1 here"; return 77; }
    if [ "$dry" = 1 ]; then echo "$1 is at $path; it needs a device"; return 77; fi
    "$path" "${@:2}"
}

# A short training with samples on the CPU and on the device.
pretrain() {
    local i
    mkdir -p "$out/data"
    for ((i = 0; i < 200; i++)); do echo "The sum of $((i % 7)) and $((i % 5)) is $((i % 7 + i % 5))."; done > "$out/data/text.txt"
    "$dir/pretrain" --data "$out/data/text.txt" --out "$1/model" --vocab-size 280 --hidden-size 64 --layers 2 --heads 2 --context 64 \
        --batch-tokens 256 --steps 6 --eval-every 3
}
thinktune() { "$dir/thinktune" --quick --pretrain-steps 200 --steps 4 --prompts 16 --questions 32 --out "$1"; }

# agreement PROGRAM KERNELS: every loss that pretrain prints to 1e-3; of thinktune's first steps, whose tokens are drawn, entropy
# and mean length to a tenth.
agreement() {
    local where
    for where in cpu device; do
        mkdir -p "$out/$1-$2-$where"
        TT_BACKEND=$([ $where = device ] && echo cuda) TT_CUDA_KERNELS=$2 "$1" "$out/$1-$2-$where" > "$out/$1-$2-$where/log" 2>&1 ||
            { tail -n 5 "$out/$1-$2-$where/log"; return 1; }
    done
    "$python" - "$1" "$out/$1-$2-cpu" "$out/$1-$2-device" << 'END'
import json, re, sys
program, *folders = sys.argv[1:]
if program == 'pretrain':
    values = [[float(x) for x in re.findall(r'loss[ =:]+([\d.]+)', open(f + '/log', errors='replace').read())] for f in folders]
    limit = 1e-3
else:
    lines = [[json.loads(line) for line in open(f + '/metrics.jsonl')][:2] for f in folders]
    values = [[line[key] for line in run for key in ('entropy', 'completions/mean_length')] for run in lines]
    limit = 0.1
far = max((abs(a - b) / (1e-9 + abs(a)) for a, b in zip(*values)), default=0)
good = len(values[0]) == len(values[1]) > 1 and far <= limit
print(f'{len(values[0])} values of {program}, the farthest {far:.2g} from the CPU, allowed {limit:.2g}')
sys.exit(0 if good else 1)
END
}

# ---- the steps ----
step environment 20 environment
if [ "$dry" = 1 ]; then
    step compile 150 compile $dir/test_optimizer $dir/pretrain $dir/bench_gemm
    step tests-own 60 tests own $dir/test_optimizer
    step tests-fast 60 tests fast $dir/test_optimizer
    step agreement 60 agreement pretrain fast
    step products-and-attention 60 env TT_CUDA_MATH=bf16 BENCH_QUICK=1 BENCH_SMALL=1 $dir/bench_gemm 1
    step pytorch 20 "$python" bench/peers.py --proof dry
    step memcheck 5 tool compute-sanitizer
    step ncu 5 tool ncu
else
    step compile-first 150 compile $dir/test_cuda $dir/test_cuda_small $dir/test_model $dir/test_trainer
    { compile cuda; timeout 150 "$python" bench/peers.py --proof warm; } > "$out/compile.log" 2>&1 &
    compiling=$!
    step operators 90 $dir/test_cuda
    step operators-small-blocks 60 $dir/test_cuda_small
    step model-own 40 tests own $dir/test_model
    step model-fast 40 tests fast $dir/test_model
    step trainer-fast 60 env TT_CUDA_KERNELS=fast $dir/test_trainer trainer_learns
    wait $compiling
    step compile-rest 5 ls $dir/bench_grpo $dir/thinktune $dir/test_think
    step tests-own 60 tests own $dir/test_autograd $dir/test_checkpoint $dir/test_sampler $dir/test_optimizer $dir/test_grpo \
        $dir/test_think $dir/test_trainer
    for kernels in fast own; do
        step "pretrain-$kernels" 20 agreement pretrain $kernels
        step "thinktune-$kernels" 40 agreement thinktune $kernels
    done
    step memcheck 60 tool compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 $dir/test_cuda_small match
    step racecheck 60 tool compute-sanitizer --tool racecheck --error-exitcode 9 $dir/test_cuda_small attention
    step synccheck 30 tool compute-sanitizer --tool synccheck --error-exitcode 9 $dir/test_cuda_small attention
    export BENCH_QUICK=1                    # from here on alone: nothing else runs beside a figure
    for math in bf16 f32; do
        step "attention-$math" 25 env TT_CUDA_MATH=$math $dir/bench_gemm 1 attention
        step "products-$math" 25 env TT_CUDA_MATH=$math $dir/bench_gemm 1 gemm_nt
    done
    step train-gpt2 30 env TT_CUDA_MATH=bf16 $dir/bench_train 1 gpt2_124m
    step train-llama 40 env TT_CUDA_MATH=bf16 $dir/bench_train 1 llama_1b
    step decode 50 env TT_CUDA_MATH=bf16 $dir/bench_generate 1
    step grpo 30 env TT_CUDA_MATH=bf16 $dir/bench_grpo 1 grpo_step
    step pytorch 110 "$python" bench/peers.py --proof
    step ncu 40 tool ncu --set full --launch-count 4 -k regex:attention $dir/bench_gemm 1 attention_forward_16x1024x12x64
fi
note "$passed passed, $failed failed"
[ $skipped -eq 0 ] || note "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
