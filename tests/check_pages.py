#!/usr/bin/env python3
"""tests/check_pages.py: the C files beside the header as pages to be read.

    width       no line over 110 columns
    statements  one statement a line
    spacing     a blank line behind every function

Usage: check_pages.py [--all] FILE ... Prints "ok name" or "FAIL name" and the places; the last line is "N passed, N failed".
Files that do not hold a rule yet are named in OWED and skipped for it; one that holds it comes off that list.
"""
import sys

from check_header import MAX_COLUMNS, several_statements, split_text, unspaced_ends

OWED = {
    "width": """
        bench/bench.h bench/bench_gemm.c bench/bench_generate.c bench/bench_grpo.c bench/bench_parallel.c
        bench/bench_tokenizer.c bench/bench_train.c examples/grpo.c
        tests/compare_models.c tests/cuda_host.h tests/fuzz_checkpoint.c
        tests/fuzz_readers.c tests/fuzz_tokenizer.c tests/header_cpp.cpp tests/header_macros.h tests/logprobs.c
        tests/nccl_host.h tests/test_autograd.c tests/test_base.c tests/test_checkpoint.c
        tests/test_cuda_host.cpp tests/test_golden.c tests/test_grpo.c tests/test_header.c tests/test_kernels.c
        tests/test_model.c tests/test_optimizer.c tests/test_parity.c tests/test_rewards.c tests/test_sampler.c
        tests/test_study.c tests/test_think.c tests/test_tokenizer.c tests/test_trainer.c tests/tt_test.h""",
    "statements": """
        bench/bench.h bench/bench_generate.c bench/bench_parallel.c tests/cuda_host.h
        tests/fuzz_checkpoint.c tests/nccl_host.h tests/test_autograd.c tests/test_base.c
        tests/test_checkpoint.c tests/test_cuda_host.cpp tests/test_golden.c tests/test_grpo.c
        tests/test_kernels.c tests/test_model.c tests/test_parity.c tests/test_rewards.c tests/test_sampler.c
        tests/test_study.c tests/test_think.c tests/test_tokenizer.c tests/test_trainer.c""",
    "spacing": """
        bench/bench.h bench/bench_gemm.c bench/bench_generate.c bench/bench_grpo.c bench/bench_parallel.c
        bench/bench_tokenizer.c bench/bench_train.c examples/grpo.c
        tests/cuda_host.h tests/fuzz_checkpoint.c tests/nccl_host.h
        tests/test_autograd.c tests/test_base.c tests/test_checkpoint.c tests/test_cuda_host.cpp
        tests/test_golden.c tests/test_grpo.c tests/test_kernels.c tests/test_model.c tests/test_optimizer.c
        tests/test_parity.c tests/test_rewards.c tests/test_sampler.c tests/test_study.c tests/test_think.c
        tests/test_tokenizer.c tests/test_trainer.c tests/tt_test.h""",
}


def places_of(path):
    """(rule, line, text) of all that breaks a rule."""
    source = open(path, encoding="utf-8").read()
    lines, code_lines = source.split("\n"), split_text(source)[0].split("\n")
    for i, line in enumerate(lines):
        if len(line) > MAX_COLUMNS:
            yield "width", i, "%d columns" % len(line)
        if several_statements(code_lines[i]):
            yield "statements", i, line.strip()
    for i in unspaced_ends(lines):
        yield "spacing", i, "a function's end without a blank line behind it"


def main():
    failures, paid = {rule: [] for rule in OWED}, []
    for path in [a for a in sys.argv[1:] if a != "--all"]:
        broken = set()
        for rule, i, text in places_of(path):
            broken.add(rule)
            if path not in OWED[rule].split():
                failures[rule].append("%s:%d: %s" % (path, i + 1, text))
        paid += ["%s of %s" % (rule, path) for rule in OWED if path in OWED[rule].split() and rule not in broken]
    for rule, places in failures.items():
        print("%s %s%s" % ("FAIL" if places else "ok", rule, ": %d" % len(places) if places else ""))
        for place in places[:400 if "--all" in sys.argv else 8]:
            print("  " + place)
    if paid:
        print("note: no longer owed: " + ", ".join(paid))
    failed = sum(bool(places) for places in failures.values())
    print("%d passed, %d failed" % (len(failures) - failed, failed))
    return 1 if failed else 0


sys.exit(main())
