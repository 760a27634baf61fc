#!/bin/sh
# tests/cuda_check.sh: build/cuda/test_cuda and a short training with samples, on the device under compute-sanitizer: accesses
# to memory, races in shared memory, barriers. COMPUTE_SANITIZER: the tool, if it is neither in PATH nor in CUDA_HOME.
# The last line is "N passed, N failed".
tool=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")}
dir=build/cuda-check
passed=0 failed=0
if ! command -v "$tool" > /dev/null; then
    echo "skipped: no $tool"
    exit 0
fi
mkdir -p $dir
i=0
while [ $i -lt 200 ]; do
    echo "The sum of $((i % 7)) and $((i % 5)) is $((i % 7 + i % 5))."
    i=$((i + 1))
done > $dir/text.txt

# check NAME COMMAND...: the command under each kind of check.
check() {
    name=$1
    shift
    for kind in 'memcheck --report-api-errors no' racecheck synccheck; do      # errors of calls are tested for, and some provoked
        rm -rf $dir/model
        if TT_BACKEND=cuda "$tool" --tool $kind --error-exitcode 9 "$@" > $dir/log 2>&1; then
            passed=$((passed + 1))
            echo "ok $name: ${kind%% *}"
        else
            failed=$((failed + 1))
            tail -n 30 $dir/log
            echo "FAIL $name: ${kind%% *}"
        fi
    done
}
check test_cuda build/cuda/test_cuda
for kernels in fast own; do
    export TT_CUDA_KERNELS=$kernels
    check "pretrain, $kernels kernels" build/cuda/pretrain --data $dir/text.txt --out $dir/model --vocab-size 280 --hidden-size 64 --layers 2 --heads 2 \
        --context 64 --batch-tokens 256 --steps 6 --eval-every 3
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
