# tests/verdict.sh: what the tests in sh count and say; each reads it (". tests/verdict.sh") from the repository's root.
# log: a file whose last lines are shown behind a failure, if it is set.
passed=0 failed=0 log=

# Whether the long sweeps are to run too.
exhaustive() { [ "${TT_EXHAUSTIVE:-0}" != 0 ]; }

# verdict STATUS NAME: one check more, passed if the status is 0.
verdict() {
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1)); printf 'ok %s\n' "$2"
    else
        failed=$((failed + 1)); printf 'FAIL %s\n' "$2"
        if [ -n "$log" ]; then tail -n 20 "$log" | sed 's/^/  /'; fi
    fi
}

# The last line of every test; its status is that of the test.
summary() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
