#!/bin/sh
# bench/bench_build.sh [COMMIT ...]: what the header costs to build, of the working tree and of commits: lines, bytes, processor
# seconds of the compiler (the least of three) and bytes of code. CC, CFLAGS (-O2). The first edition is c08cb17.
cd "$(dirname "$0")/.." || exit 1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cc=${CC:-cc}
printf '#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\n' > "$dir/tt.c"

# The shell's own count of its children: "0m1.234s 0m0.056s" in the second line.
seconds() { ( "$@"; times ) | tail -n 1 | awk '{ split($1, u, /[ms]/); print 60 * u[1] + u[2] }'; }
measure() {   # name, with the header in $dir
    least=
    for k in 1 2 3; do
        s=$(seconds "$cc" -std=c99 ${CFLAGS:--O2} -c "$dir/tt.c" -o "$dir/tt.o")
        least=$(awk -v a="${least:-$s}" -v b="$s" 'BEGIN { print a < b ? a : b }')
    done
    code=$(size "$dir/tt.o" | awk 'END { print $1 }')
    echo "| $1 | $(wc -l < "$dir/thinktuning.h") | $(wc -c < "$dir/thinktuning.h") | $least | $code |"
}

echo "| header | lines | bytes | $cc ${CFLAGS:--O2}, s | code, bytes |"
echo "|---|---:|---:|---:|---:|"
for commit in "$@"; do
    git show "$commit:thinktuning.h" > "$dir/thinktuning.h" && measure "$commit"
done
cp thinktuning.h "$dir/" && measure "working tree"
