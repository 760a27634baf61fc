# Tests of other machines, of hostile input, of rivals; fuzzers: included by the Makefile, whose variables it uses.
FUZZERS := $(patsubst tests/%.c,build/%,$(wildcard tests/fuzz_*.c))

## make test-cross  AArch64 under qemu, Windows, wasm32: what cross compilers are there
test-cross:
	@tests/cross.sh

CASES ?= ../shared/cases
## make test-cases  odd and hostile inputs of the folder CASES through library, programs and converter, if there (PYTHON)
test-cases: $(EXAMPLES)
	@CC="$(CC)" CXX="$(CXX)" PYTHON="$(PYTHON)" TT_CASES="$(CASES)" tests/test_cases.sh

## make compare-rewards  the rewards beside Math-Verify on MATH500=test.jsonl (PYTHON with math-verify)
compare-rewards: build/grade
	$(PYTHON) tests/compare_rewards.py $(MATH500)

## make fuzz        fuzzes the readers with clang (FUZZ_SECONDS=n each)
fuzz: $(FUZZERS)
	@for f in $^; do echo "== $$f"; mkdir -p build/corpus/$$(basename $$f) && \
	  $$f -max_total_time=$(or $(FUZZ_SECONDS),60) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=build/ \
	  build/corpus/$$(basename $$f) $$([ $$f = build/fuzz_checkpoint ] && echo tests/golden/hf) || exit 1; done

$(FUZZERS): build/%: tests/%.c $(LIBRARY) | build
	clang -std=c99 $(SANITIZE) -fsanitize=fuzzer $< -o $@ $(LDLIBS)

.PHONY: test-cross test-cases compare-rewards fuzz
