#!/bin/sh
# tests/strict.sh: the header must compile without a warning in every supported way, export only tt_ names,
# keep no state in globals and neither print nor end the program. Missing compilers are skipped visibly.
cd "$(dirname "$0")/.." || exit 1
dir=build/strict
mkdir -p $dir
warn="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
. tests/verdict.sh

printf '#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\n' > $dir/all.c
printf '#define TT_STATIC\n#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\n' > $dir/static.c
printf '#include "thinktuning.h"\n#include "thinktuning.h"\nint unit(void);\nint unit(void) { return 0; }\n' > $dir/api.c
printf '#include <omp.h>\nint unit(void);\nint unit(void) { return omp_get_max_threads(); }\n' > $dir/openmp.c

# The companions of examples/ want the public part of the header alone, in any order and more than once.
companions="losses rewards tasks evaluate feedback"
for companion in $companions; do
    printf '#include "thinktuning.h"\n#include "examples/%s.h"\nint unit(void);\nint unit(void) { return 0; }\n' $companion > $dir/$companion.c
done
printf '#include "thinktuning.h"\n#include "examples/%s.h"\n#include "examples/%s.h"\n#include "examples/%s.h"\n#include "examples/%s.h"\n#include "examples/%s.h"\n' \
    evaluate feedback tasks losses rewards | cat - $dir/evaluate.c > $dir/companions.c
printf '#include "examples/rewards.h"\n' > $dir/before.c

# compile NAME COMMAND...: runs in the background, at most two at a time; collect takes the results.
pending=""
compile() {
    name=$1; shift
    ( "$@" > "$dir/$name.log" 2>&1; echo $? > "$dir/$name.rc" ) &
    pending="$pending $name"
    running=$((running + 1))
    if [ "$running" -ge 2 ]; then wait; running=0; fi
}
running=0
for cc in gcc clang; do
    if ! command -v $cc > /dev/null; then echo "skip $cc: not installed"; continue; fi
    for unit in all static api one-thread simd128 openmp; do
        file=$unit flags=""
        case $unit in
        one-thread) file=all flags="-DTT_NO_THREADS" ;;
        simd128) file=all flags="-DTTI_SIMD128" ;;      # the kernels of WebAssembly, on this machine
        openmp) file=all flags="-DTT_OPENMP -fopenmp"
            if ! $cc -fopenmp -c $dir/openmp.c -o $dir/openmp.o 2> /dev/null; then echo "skip $cc with OpenMP: no omp.h"; continue; fi ;;
        esac
        # gcc has warnings that need optimisation, the same for both languages; clang has none.
        c=-O0 cpp=-O0
        case $cc-$unit in gcc-all) c=-O2 cpp=-O2 ;; gcc-* | clang-all) c=-O2 ;; esac
        compile "$cc-c99-$unit" $cc -std=c99 $c $flags $warn -I. -c $dir/$file.c -o "$dir/$cc-c99-$unit.o"
        compile "$cc-c++11-$unit" $cc -x c++ -std=c++11 $cpp $flags $warn -I. -c $dir/$file.c -o "$dir/$cc-c++11-$unit.o"
    done
    for unit in $companions companions; do
        compile "$cc-c99-$unit" $cc -std=c99 -O2 $warn -I. -c $dir/$unit.c -o "$dir/$cc-c99-$unit.o"
        compile "$cc-c++11-$unit" $cc -x c++ -std=c++11 -O2 $warn -I. -c $dir/$unit.c -o "$dir/$cc-c++11-$unit.o"
    done
    for example in examples/*.c; do      # each holds the whole header: without optimisation, that has had its turn
        compile "$cc-$(basename "$example")" $cc -std=c99 $warn -O0 -c "$example" -o $dir/example.$cc.o
    done
done
wait
for name in $pending; do
    status=$(cat "$dir/$name.rc")
    if [ "$status" -ne 0 ]; then head -n 20 "$dir/$name.log"; fi
    verdict "$status" "compiles: $name"
done

# Exported, undefined and writable names of the implementation; no PIC, so that constant tables of pointers
# count as read-only.
if command -v nm > /dev/null && ${CC:-cc} -std=c99 -O1 -fno-pie -fno-pic -I. -c $dir/all.c -o $dir/names.o; then
    foreign=$(nm $dir/names.o | awk '$2 ~ /^[A-TV-Z]$/ && $3 !~ /^_?tt_/ { print $3 }')
    verdict "$([ -z "$foreign" ]; echo $?)" "exports only tt_ names $foreign"
    state=$(nm $dir/names.o | awk '$2 ~ /^[bBdDC]$/ { print $3 }')
    verdict "$([ -z "$state" ]; echo $?)" "no state in globals $state"
    calls=$(nm $dir/names.o | awk '$1 == "U" { print $2 }' |
        grep -E '^_*(printf|vprintf|puts|putchar|perror|stdout|stderr|exit|Exit|abort|assert_fail|assert_rtn|rand|srand|getchar|system)(_chk)?$')
    verdict "$([ -z "$calls" ]; echo $?)" "neither prints nor exits $calls"
else
    verdict 1 "names of the implementation"
fi
verdict "$(grep -nE '[^ -~	]' thinktuning.h > $dir/ascii.log; [ $? -eq 1 ]; echo $?)" "is plain ASCII"
verdict "$(cd examples && grep -nE '\b(tti|TTI)_' losses.h rewards.h tasks.h evaluate.h feedback.h > ../$dir/private.log; [ $? -eq 1 ]; echo $?)" \
    "the companions use no private name of the header"
verdict "$(${CC:-cc} -std=c99 -I. -c $dir/before.c -o $dir/before.o 2> $dir/before.log; grep -q 'include thinktuning.h before it' $dir/before.log; echo $?)" \
    "a companion without the header says what is missing"
if command -v python3 > /dev/null; then
    python3 tests/check_header.py > $dir/page.log
    grep -E '^(FAIL|  )' $dir/page.log
    verdict "$(grep -q '^FAIL' $dir/page.log; [ $? -eq 1 ]; echo $?)" "reads as a page: size, width, statements, spacing, order of chapters, comments"
    python3 tests/check_pages.py examples/*.[ch] bench/*.[ch] tests/*.[ch] tests/*.cpp > $dir/pages.log
    status=$?
    grep -E '^(FAIL|  |note)' $dir/pages.log
    verdict $status "examples, benches and tests read as pages: width, statements, spacing"
else
    echo "skip the header and its companions as pages: no python3"
fi
summary
