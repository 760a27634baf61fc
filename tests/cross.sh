#!/bin/sh
# tests/cross.sh: other machines. The kernel and autograd tests on AArch64 under qemu, with the NEON kernels and with the
# portable ones; the implementation and a program for Windows with MinGW; the implementation for wasm32 (WASI), and its tests
# under node, with the kernels of SIMD128 and with the portable ones. A compiler or emulator that is not installed is
# skipped by name.
cd "$(dirname "$0")/.." || exit 1
dir=build/cross
mkdir -p $dir
flags="-std=c99 -Wall -Wextra -Werror -O1"
. tests/verdict.sh
log=$dir/log

there() {     # command, for what
    command -v "$1" > /dev/null && return
    echo "skip $2: no $1"
    return 1
}

printf '#define THINKTUNING_IMPLEMENTATION\n#include "thinktuning.h"\nint main(void) { return tt_create(NULL) == NULL; }\n' > $dir/all.c

if there aarch64-linux-gnu-gcc AArch64; then
    for test in kernels autograd; do
        program=$dir/test_$test-aarch64
        rm -f $program
        object=      # a test that does not include the implementation is linked with it
        if ! grep -q '^#define THINKTUNING_IMPLEMENTATION' tests/test_$test.c; then
            object=$dir/thinktuning-aarch64.o
            aarch64-linux-gnu-gcc $flags -x c -DTHINKTUNING_IMPLEMENTATION -c thinktuning.h -o $object > $dir/log 2>&1
            verdict $? "AArch64: compiles the implementation"
        fi
        aarch64-linux-gnu-gcc $flags -static tests/test_$test.c $object -o $program -lm > $dir/log 2>&1
        verdict $? "AArch64: compiles test_$test"
        if [ -x $program ] && there qemu-aarch64 "AArch64: test_$test"; then
            for kernel in neon portable; do
                TT_EXHAUSTIVE=1 TT_KERNEL=$kernel timeout 600 qemu-aarch64 $program > $dir/log 2>&1
                verdict $? "AArch64: test_$test, $kernel: $(tail -n 1 $dir/log)"
            done
        fi
    done
fi
if there x86_64-w64-mingw32-gcc Windows; then
    x86_64-w64-mingw32-gcc $flags -I. $dir/all.c -o $dir/all.exe > $dir/log 2>&1
    verdict $? "Windows: compiles the implementation"
    x86_64-w64-mingw32-gcc $flags examples/tokenize.c -o $dir/tokenize.exe > $dir/log 2>&1
    verdict $? "Windows: compiles tokenize"
fi
wasm="clang --target=wasm32-wasi $flags -msimd128"
if there clang wasm32; then
    if echo '#include <stdio.h>' | clang --target=wasm32-wasi -x c -c - -o $dir/stdio.o 2> /dev/null; then
        clang --target=wasm32-wasi $flags -I. -c $dir/all.c -o $dir/all.wasm.o > $dir/log 2>&1
        verdict $? "wasm32: compiles the implementation"
    else
        echo "skip wasm32: no C library (wasi-libc)"
    fi
    if ! echo 'int main(void) { return 0; }' | clang --target=wasm32-wasi -x c - -o $dir/link.wasm 2> /dev/null; then
        echo "skip wasm32: tests: no linker (lld) or run time (libclang-rt-dev-wasm32)"
    elif there node "wasm32: tests"; then
        $wasm -x c -DTHINKTUNING_IMPLEMENTATION -c thinktuning.h -o $dir/simd128.wasm.o > $dir/log 2>&1
        verdict $? "wasm32: compiles the implementation with SIMD128"
        for test in kernels autograd; do
            object=$dir/simd128.wasm.o
            if grep -q '^#define THINKTUNING_IMPLEMENTATION' tests/test_$test.c; then object=; fi
            $wasm -Wl,--stack-first,-z,stack-size=1048576 tests/test_$test.c $object -o $dir/test_$test.wasm -lm > $dir/log 2>&1
            verdict $? "wasm32: compiles test_$test"
            # One thread: those with which node 20 compiles in the background crash now and then as it ends, after the last line.
            for kernel in simd128 portable; do
                TT_EXHAUSTIVE=1 TT_KERNEL=$kernel timeout 600 node --no-warnings --single-threaded tests/wasi.mjs $dir/test_$test.wasm > $dir/log 2>&1
                verdict $? "wasm32: test_$test, $kernel: $(tail -n 1 $dir/log)"
            done
        done
    fi
fi
summary
