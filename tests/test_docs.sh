#!/bin/sh
# tests/test_docs.sh: compiles and runs what the documentation shows, so that it cannot rot.
#   README.md        every ```c block with a main is run, every other one compiled; every "```sh run" block is run
#   thinktuning.h    the program of the manual: from its #define THINKTUNING_IMPLEMENTATION to the } of main
# Everything runs in the repository root. Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
dir=build/docs
rm -rf $dir && mkdir -p $dir
passed=0 failed=0

verdict() {   # status name
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1)); echo "ok $2"
    else
        failed=$((failed + 1)); echo "FAIL $2"; tail -n 20 $dir/log | sed 's/^/  /'
    fi
}

program() {   # file name
    ${CC:-cc} -std=c99 -O1 -Wall -Wextra -I. "$1" -o $dir/program -lm > $dir/log 2>&1 && $dir/program >> $dir/log 2>&1
    verdict $? "$2"
}

# Writes each fenced block to build/docs/LINE.c or .sh; LINE is where it stands.
[ -f README.md ] && awk -v dir=$dir '
    /^```/ && out { close(out); out = ""; next }
    /^```c$/ { out = dir "/" NR ".c"; next }
    /^```sh run$/ { out = dir "/" NR ".sh"; next }
    /^```[a-z]/ { out = "/dev/null"; next }
    /^```$/ { out = "/dev/null"; next }
    out { print > out }' README.md

# The manual is a comment: " *" stands before each line, which begin cuts off. The last define before main counts.
awk '
    NR > 400 { exit }
    /#define THINKTUNING_IMPLEMENTATION/ && !in_main { on = 1; text = ""; match($0, /#define/); begin = RSTART }
    on { text = text substr($0, begin) "\n" }
    on && /main\(/ { in_main = 1 }
    in_main && substr($0, begin) ~ /^}/ { printf "%s", text; exit }' thinktuning.h > $dir/manual.c

if [ -s $dir/manual.c ]; then
    program $dir/manual.c "the manual's program"
else
    echo "skip the manual's program: none found"
fi
[ -f README.md ] || echo "skip README.md: not there"
for file in $dir/[0-9]*.c; do
    [ -f "$file" ] || continue
    line=$(basename "$file" .c)
    if grep -q 'main(' "$file"; then
        program "$file" "README.md:$line program"
    else
        { printf '#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\n'; cat "$file"; } > $dir/part.c
        ${CC:-cc} -std=c99 -O0 -Wall -Wextra -I. -c $dir/part.c -o $dir/part.o > $dir/log 2>&1
        verdict $? "README.md:$line compiles"
    fi
done
for file in $dir/[0-9]*.sh; do
    [ -f "$file" ] || continue
    sh -e "$file" > $dir/log 2>&1
    verdict $? "README.md:$(basename "$file" .sh) commands"
done
# Files and make targets that the README names must exist.
if [ -f README.md ]; then
    : > $dir/log
    for path in $(grep -oE '\]\(([A-Za-z0-9_./-]+)\)' README.md | sed 's/^](//; s/)$//' | sort -u); do
        [ -e "$path" ] || echo "no such file: $path" >> $dir/log
    done
    for target in $(grep -oE '(^|`|\$ )make [a-z-]+' README.md | sed 's/.*make //' | sort -u); do
        grep -qhE "^$target:" Makefile tests/gpu.mk bench/bench.mk || echo "no such target: make $target" >> $dir/log
    done
    [ ! -s $dir/log ]
    verdict $? "README.md's links and make targets"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
