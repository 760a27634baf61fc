# GNU make 3.81 or newer and a C99 compiler are enough. From outside: CC, CXX, CFLAGS, OPENMP=0, NVCC, CUDA_ARCH.
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
FUZZ_SECONDS ?= 60

# OPENMP is 1 if the compiler can build and link it, unless given.
ifndef OPENMP
OPENMP := $(shell mkdir -p build && printf '\043include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' \
            > build/openmp.c && $(CC) -fopenmp build/openmp.c -o build/openmp 2> /dev/null && echo 1)
endif
ifeq ($(OPENMP),1)
STD += -fopenmp
endif

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
CUDA_PROGRAMS := $(patsubst build/%,build/cuda/%,$(EXAMPLES)) build/cuda/bench_train build/cuda/bench_generate
CUDA_TESTED   := build/cuda/test_cuda $(patsubst %,build/cuda/test_%,autograd model checkpoint sampler optimizer grpo think trainer)
ifneq ($(and $(NVCC_PATH),$(wildcard /dev/nvidia0 /dev/dxg)),)
CUDA_TESTS := $(CUDA_TESTED)
endif
# The header in further translation units of the same program: as a user, and as a private copy (TT_STATIC).
HEADER_UNITS := tests/header_second.c tests/header_static.c

help:
	@echo 'make demo        trains, compares GRPO with ThinkTuning, writes runs/demo (SEEDS=n repeats it)'
	@echo 'make examples    builds build/thinktune, pretrain, sft, generate, ...'
	@echo 'make test        builds and runs every test; the last line sums up'
	@echo 'make check       the same under address and undefined-behaviour sanitizers'
	@echo 'make strict      the header without a warning: gcc and clang, C99 and C++11, with and without OpenMP'
	@echo 'make docs-check  compiles and runs the programs of README.md and of the manual'
	@echo 'make fuzz        fuzzes the readers with clang (FUZZ_SECONDS=n each)'
	@echo 'make cuda        tt_cuda.cu, and tests, examples and benches linked with it, in build/cuda (needs nvcc)'
	@echo 'make bench       every figure of bench/RESULTS.md'
	@echo 'make clean       removes build/'
	@echo 'Variables: CC CXX CFLAGS OPENMP=0. Compile in parallel with -j.'

demo: build/thinktune
	build/thinktune --out runs/demo --seeds $(SEEDS)

examples: $(EXAMPLES)

test: $(TESTS:%=build/%) build/test_header_cpp build/test_cuda_host $(CUDA_TESTS)
	$(if $(CUDA_TESTS),,@echo 'skipped: the tests on a GPU: no device')
	@tests/run.sh $(TESTS:%=build/%) build/test_header_cpp build/test_cuda_host $(CUDA_TESTS) tests/test_docs.sh

check: $(TESTS:%=build/sanitize/%) build/sanitize/test_cuda_host
	@ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 tests/run.sh $^

strict:
	@tests/strict.sh

docs-check:
	@CC="$(CC)" tests/test_docs.sh

fuzz: $(FUZZERS)
	@for f in $^; do echo "== $$f"; mkdir -p build/corpus/$$(basename $$f) && \
	  $$f -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -artifact_prefix=build/ \
	  build/corpus/$$(basename $$f) || exit 1; done

bench: $(BENCHES)
	@for b in $^; do echo "== $$b"; $$b || exit 1; done

cuda: build/tt_cuda.o $(CUDA_TESTED) $(CUDA_PROGRAMS)

clean:
	rm -rf build

build build/sanitize build/cuda:
	mkdir -p $@

$(EXAMPLES): build/%: examples/%.c $(LIBRARY) $(wildcard examples/*.h) | build
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

$(BENCHES): build/%: bench/%.c $(LIBRARY) | build
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

build/test_header build/sanitize/test_header: $(HEADER_UNITS)
build/test_header: EXTRA := $(HEADER_UNITS)
build/sanitize/test_header: EXTRA := $(HEADER_UNITS)
ifneq ($(OS),Windows_NT)
build/test_header build/sanitize/test_header: LDLIBS += -lpthread
endif

build/test_%: tests/test_%.c $(HARNESS) | build
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< $(EXTRA) -o $@ $(LDFLAGS) $(LDLIBS)

build/sanitize/test_%: tests/test_%.c $(HARNESS) | build/sanitize
	$(CC) $(STD) $(WARN) $(SANITIZE) $(CPPFLAGS) $< $(EXTRA) -o $@ $(LDFLAGS) $(LDLIBS)

build/test_header_cpp: tests/header_cpp.cpp $(HARNESS) | build
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

# The kernels of tt_cuda.cu on the CPU.
build/test_cuda_host build/sanitize/test_cuda_host: tests/cuda_host.h tt_cuda.cu
build/test_cuda_host: tests/test_cuda_host.cpp $(HARNESS) | build
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

build/sanitize/test_cuda_host: tests/test_cuda_host.cpp $(HARNESS) | build/sanitize
	$(CXX) -std=c++11 $(WARN) $(SANITIZE) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

build/tt_cuda.o: tt_cuda.cu $(LIBRARY) | build
	$(NVCC) -O3 -std=c++14 $(CUDA_ARCH) -Werror all-warnings -Xcompiler -Wall,-Wextra -c $< -o $@

# The operators once more, against the CPU backend, on the device.
build/cuda/test_cuda: tests/test_cuda_host.cpp $(HARNESS) build/tt_cuda.o | build/cuda
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) -DTT_TEST_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

build/cuda/test_%: tests/test_%.c $(HARNESS) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) -DTT_TEST_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

# TT_BACKEND=cuda puts them on the device.
build/cuda/bench_%: bench/bench_%.c $(LIBRARY) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

build/cuda/%: examples/%.c $(LIBRARY) $(wildcard examples/*.h) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_CUDA $< build/tt_cuda.o -o $@ $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

$(FUZZERS): build/%: tests/%.c $(LIBRARY) | build
	clang -std=c99 $(SANITIZE) -fsanitize=fuzzer $< -o $@ $(LDLIBS)

.PHONY: help demo examples test check cuda strict docs-check fuzz bench clean
.DEFAULT_GOAL := help
