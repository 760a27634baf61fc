#!/bin/sh
# tests/kernels.sh PROGRAM...: runs the test programs with each set of CPU kernels that this machine has, forced by TT_KERNEL.
# Which there are, build/generate says when it is asked for one that does not exist.
cd "$(dirname "$0")/.." || exit 1
kernels=$(TT_KERNEL=none build/generate --model none --prompt none 2>&1 | sed -n 's/.*expected one of: //p' | tr -d ,)
passed=0 failed=0
if [ -z "$kernels" ]; then failed=1; echo "FAIL build/generate named no kernels"; fi
for kernel in $kernels; do
    for program in "$@"; do
        last=$(TT_KERNEL=$kernel "$program" 2>&1 | tee "build/$kernel.log" | tail -n 1)
        case $last in
        *" passed, 0 failed") passed=$((passed + ${last%% *})); echo "ok $kernel $program: $last" ;;
        *) failed=$((failed + 1)); echo "FAIL $kernel $program: $last"; tail -n 20 "build/$kernel.log" ;;
        esac
    done
    rm -f "build/$kernel.log"
done
for kernel in avx512 avx2 neon; do
    case " $kernels " in *" $kernel "*) ;; *) echo "skip $kernel: not on this machine" ;; esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
