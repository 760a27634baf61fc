#!/bin/sh
# tests/run.sh PROGRAM...: runs each test program and sums up its last line, "N passed, N failed".
# PYTHON runs those that end in .py.
# A program that dies or says nothing counts as one failure. Exit status 1 if anything failed.
run() { case $1 in *.py) "${PYTHON:-python3}" "$1" ;; *) "$1" ;; esac; }
passed=0 failed=0
for program in "$@"; do
    echo "== $program"
    case $program in *.py)
        if ! "${PYTHON:-python3}" -c 'import numpy' 2> /dev/null; then
            echo "skip   $program: ${PYTHON:-python3} with numpy is not there"
            continue
        fi ;;
    esac
    output=$(run "$program" 2>&1)
    status=$?
    printf '%s\n' "$output"
    counts=$(printf '%s\n' "$output" | sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
    if [ -z "$counts" ]; then
        echo "FAIL $program: exit status $status, no last line 'N passed, N failed'"
        counts="0 1"
    elif [ "$status" -ne 0 ] && [ "${counts#* }" -eq 0 ]; then
        echo "FAIL $program: exit status $status"
        counts="${counts% *} 1"
    fi
    passed=$((passed + ${counts% *}))
    failed=$((failed + ${counts#* }))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
