#!/bin/sh
# tests/test_docs.sh: compiles and runs what the documentation shows, so that it cannot rot.
#   README.md, examples/README.md   every ```c block with a main is run, every other one compiled; the lines of every ```sh
#                    block and of every indented block of commands are run
#   thinktuning.h    the program of the manual: from its #define THINKTUNING_IMPLEMENTATION to the } of main
# Only the shared library compiles the implementation; programs are linked with build/thinktuning.o, unless TT_EXHAUSTIVE=1.
# Programs run in the repository root. Commands run in a folder of their own, build/docs/run, with small stand-ins for what is the
# user's (mybook.txt, train.jsonl, app.c) and with the programs of build/, whose long runs are shortened; DOCS_FULL=1 leaves
# them as they are written. A command that is not run is named with its reason. Last line: N passed, N failed.
cd "$(dirname "$0")/.." || exit 1
root=$(pwd)
dir=build/docs
rm -rf $dir && mkdir -p $dir/run/build
. tests/verdict.sh
log=$dir/log
[ -z "$DOCS_FULL" ] || TT_EXHAUSTIVE=1

linked="-DLINKED_PUBLIC -include tests/linked.h build/thinktuning.o"
if exhaustive; then linked=; else echo "skipped: programs that hold the whole header (TT_EXHAUSTIVE=1 compiles them so)"; fi
program() {   # file, name; not optimized: as soon compiled, and its runs are short
    ${CC:-cc} -std=c99 -O0 -Wall -Wextra -I. "$1" $linked -o $dir/program -lm > $dir/log 2>&1 && $dir/program >> $dir/log 2>&1
    verdict $? "$2"
}

# ---- commands ----
# build/NAME in the folder of commands: the program with options behind those of the README, which count instead of them.
shorten() {   # name options
    [ -n "$DOCS_FULL" ] && set -- "$1" ""
    printf '#!/bin/sh\nexec "%s/build/%s" "$@" %s\n' "$root" "$1" "$2" > $dir/run/build/"$1"
    chmod +x $dir/run/build/"$1"
}
stand_ins() {
    shorten pretrain "--steps 20 --eval-every 20 --hidden-size 32 --layers 2"
    shorten sft "--epochs 1"
    shorten generate ""
    shorten tokenize ""
    shorten grpo ""
    shorten think "200 4"                 # behind the seed
    shorten thinktune "--quick --steps 1 --prompts 2 --num-generations 2 --max-length 16 --questions 4 --gate-questions 2 --teacher-length 8"
    exhaustive || ln -s "$root/build/thinktuning.o" $dir/run/tt.o
    cat > $dir/run/app.c <<'APP'
#include "thinktuning.h"
int main(void) {
    tt_context *ctx = tt_create(NULL);
    tt_destroy(ctx);
    return ctx == NULL;
}
APP
    ln -s "$root/thinktuning.h" $dir/run/thinktuning.h
    awk 'BEGIN {
        n = split("the old king sat by a river and told his men of bread the sun had not seen while seven dogs ran over hills", word, " ")
        for (i = 0; i < 6000; i++) { line = ""; for (k = 0; k < 12; k++) { line = line word[1 + (i * 7 + k * k * 3 + i * k) % n] " " } print line "." }
    }' > $dir/run/mybook.txt
    awk 'BEGIN {
        for (i = 1; i <= 400; i++) {
            a = 2 + i % 9; b = 3 + i % 7
            printf "{\"question\": \"Ann has %d bags with %d apples in each and buys %d more. She says \\\"enough\\\". How many apples has she now?\", ", a, b, i
            printf "\"answer\": \"In the bags are %d*%d=%d apples.\\nWith the others she has %d+%d=%d.\\n#### %d\"}\n", a, b, a * b, a * b, i, a * b + i, a * b + i
        }
    }' > $dir/run/train.jsonl
}
why_not() {   # command: the reason why it is not run, nothing if it is
    case $1 in
    *apt-get*) echo "installs packages" ;;
    "make test"*) echo "runs this script" ;;
    "make examples") exhaustive || echo "those that are used are built (TT_EXHAUSTIVE=1 runs it)" ;;
    "cc "*" -c tt.c") exhaustive || echo "tt.o is build/thinktuning.o (TT_EXHAUSTIVE=1 runs it)" ;;
    *mpirun* | "make mpi"*) command -v "${MPICC:-mpicc}" > /dev/null && command -v "${MPIRUN:-mpirun}" > /dev/null || { echo "no MPI"; return; }
                            echo "make test-mpi runs the programs over MPI" ;;
    esac
}
make_target() {   # make and its target, here, where the Makefile is
    case $1 in
    "make demo"*) options="--quick --pretrain-steps 20 --steps 1 --questions 16 --gate-questions 8"
                  exhaustive && options="--quick"
                  [ -n "$DOCS_FULL" ] && options=
                  make -C "$root" demo DEMO_OUT=$dir/demo DEMO_OPTIONS="$options" ;;
    *) make -C "$root" ${1#make } ;;
    esac
}
commands() {   # file, where it stands
    cp "$1" $dir/block
    while IFS= read -r command; do
        command=$(printf '%s\n' "$command" | sed 's/[[:space:]]*#[[:space:]].*//; s/[[:space:]]*$//')
        [ -n "$command" ] || continue
        [ -n "$DOCS_FULL" ] || short=$(printf '%s\n' "$command" | sed 's/^cc -O2/cc -O0/')
        reason=$(why_not "$command")
        if [ -n "$reason" ]; then printf 'skip %s %s: %s\n' "$2" "$command" "$reason"; continue; fi
        case $command in
        make*) make_target "$command" > $dir/log 2>&1 ;;
        *) (cd $dir/run && sh -ec "${short:-$command}") > $dir/log 2>&1 < /dev/null ;;
        esac
        verdict $? "$2 $command"
    done < $dir/block
}

# Writes each block of a document to build/docs/DOCUMENT:LINE.c or .sh, / being + in DOCUMENT; LINE is where it stands.
documents=$(ls README.md examples/README.md 2> /dev/null)
for document in $documents; do
    awk -v to="$dir/$(echo $document | tr / +):" '
        /^```/ && out { close(out); out = ""; next }
        /^```c$/ { out = to NR ".c"; next }
        /^```sh( run)?$/ { out = to NR ".sh"; next }
        /^```/ { out = "/dev/null"; next }
        !out && /^    [^ ]/ { if (!block) { block = to NR ".sh" } print substr($0, 5) > block; next }
        { block = "" }
        out { print > out }' $document
done
stands() { basename "${1%.*}" | tr + /; }      # of a block

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
[ -n "$documents" ] || echo "skip README.md: not there"
for file in $dir/*README.md:*.c; do
    [ -f "$file" ] || continue
    if grep -q 'main(' "$file"; then
        program "$file" "$(stands "$file") program"
    else
        { echo '#include "thinktuning.h"'; cat "$file"; } > $dir/part.c
        ${CC:-cc} -std=c99 -O0 -Wall -Wextra -I. -c $dir/part.c -o $dir/part.o > $dir/log 2>&1
        verdict $? "$(stands "$file") compiles"
    fi
done
stand_ins
for document in $documents; do      # in the order of its lines
    for file in $(ls $dir/"$(echo $document | tr / +)":*.sh 2> /dev/null | sort -t: -k2 -n); do
        commands "$file" "$(stands "$file")"
    done
done

# What a shared library shows: with TT_API, as the README and the manual have it, the tt_ functions and nothing else.
if [ -f $dir/run/libtt.so ] && command -v nm > /dev/null; then
    nm -D --defined-only $dir/run/libtt.so | awk '$2 ~ /[TDBR]/ { print $3 }' | grep -v '^_' > $dir/exported
    grep -v '^tt_' $dir/exported > $dir/log
    grep -q '^tt_trainer_step$' $dir/exported && grep -q '^tt_create$' $dir/exported && [ ! -s $dir/log ]
    verdict $? "the shared library exports $(wc -l < $dir/exported) functions, all of them tt_"
else
    echo "skip the shared library's names: no libtt.so or no nm"
fi
# Files and make targets that a document names must exist.
for document in $documents; do
    : > $dir/log
    for path in $(grep -oE '\]\(([A-Za-z0-9_./-]+)\)' $document | sed 's/^](//; s/)$//' | sort -u); do
        [ -e "$(dirname $document)/$path" ] || echo "no such file: $path" >> $dir/log
    done
    for target in $(grep -oE '(^|`|\$ )make [a-z-]+' $document | sed 's/.*make //' | sort -u); do
        grep -qhE "^$target:" Makefile tests/*.mk bench/bench.mk examples/web.mk || echo "no such target: make $target" >> $dir/log
    done
    [ ! -s $dir/log ]
    verdict $? "$document's links and make targets"
done
summary
