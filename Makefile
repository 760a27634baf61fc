# GNU make 3.81 or newer and gcc or clang are enough; the lines that begin with ## are what make help prints.
# From outside: CC, CXX, CFLAGS, LDFLAGS, PYTHON; and NVCC, CUDA_ARCH, MPICC, MPIRUN (tests/gpu.mk).
CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O2 -g
STD      := -std=c99
WARN     := -Wall -Wextra
LDLIBS   := -lm
# Without optimisation the copies of private functions would all be kept.
TEST_CFLAGS ?= $(if $(filter $<,$(PRIVATE)),-O1,-O0) -g
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
RACE     := -O1 -g -fsanitize=thread
SEEDS    ?= 1
DEMO_OUT ?= runs/demo
PYTHON   ?= python3
# All processors, unless -j says how many.
ifeq ($(filter -j% --jobserver%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(or $(shell getconf _NPROCESSORS_ONLN 2> /dev/null),1)
endif
# Said before a compilation in which nothing is to be seen.
COMPILING = @echo 'compiling $@ (the whole library: up to half a minute) ...'

LIBRARY  := thinktuning.h
HARNESS  := $(LIBRARY) tests/tt_test.h tests/rollouts.h tests/linked.h $(wildcard examples/*.h)
TESTS    := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
EXAMPLES := $(patsubst examples/%.c,build/%,$(filter-out examples/web.c,$(wildcard examples/*.c)))
# The implementation is compiled once, into thinktuning.o, and linked with programs and tests; see tests/linked.h. A test that
# wants private names says so as a program that includes the implementation does.
PRIVATE  := $(shell grep -l '^.define THINKTUNING_IMPLEMENTATION' tests/test_*)
LINKED    = $(if $(filter $<,$(PRIVATE)),-fno-inline,-DLINKED_PUBLIC) -include tests/linked.h
THREADS  := $(if $(filter Windows_NT,$(OS)),,-lpthread)
# The header in further translation units of the same program: as a user, and as a private copy (TT_STATIC).
HEADER_UNITS := tests/header_second.c tests/header_static.c

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)
	@echo 'Variables: CC CXX CFLAGS PYTHON.'

## make demo        trains, compares GRPO with ThinkTuning, writes runs/demo (SEEDS=n repeats it)
demo: build/thinktune
	build/thinktune --out $(DEMO_OUT) --seeds $(SEEDS) $(DEMO_OPTIONS)

## make study       the table with its ablations over 5 seeds, about an hour, resumable: runs/study (STUDY_SEEDS=n)
study: build/study
	build/study --out runs/study --seeds $(or $(STUDY_SEEDS),5)

## make study-feedback  the relatives of ThinkTuning: create, keep or destroy reflection, resumable: runs/study-feedback
study-feedback: build/study
	build/study --only create,keep --out runs/study-feedback --seeds $(or $(STUDY_SEEDS),5)

## make examples    builds build/thinktune, pretrain, sft, generate, ...
examples: $(EXAMPLES)

include tests/gpu.mk tests/more.mk bench/bench.mk examples/web.mk

# Without a C++ compiler these are left out.
EXHAUSTIVE := $(filter-out 0,$(TT_EXHAUSTIVE))
CXX_TESTS := $(if $(shell command -v $(CXX)),build/test_header_cpp $(if $(EXHAUSTIVE),build/test_cuda_host))

## make test        builds and runs every test in a minute and a half of one processor; the last line sums up
##                  (TT_EXHAUSTIVE=1: with the long sweeps, five minutes)
test: $(TESTS:%=build/%) $(CXX_TESTS) $(filter-out build/study,$(EXAMPLES)) $(CUDA_TESTS)
	$(if $(CXX_TESTS),,@echo 'skipped: the header as C++, the CUDA kernels on the CPU: $(CXX) is not there')
	$(if $(EXHAUSTIVE),,@echo 'skipped: the CUDA kernels on the CPU (make test-cuda-host or TT_EXHAUSTIVE=1 runs them)')
	$(if $(CUDA_TESTS),,@echo 'skipped: the tests on a GPU: no device')
	@PYTHON="$(PYTHON)" CC="$(CC)" CXX="$(CXX)" tests/run.sh $(TESTS:%=build/%) $(CXX_TESTS) $(CUDA_TESTS) \
	  tests/test_docs.sh tests/test_trainer_copy.sh tests/test_programs.sh tests/test_hosts.sh tests/test_grade.sh tests/test_convert.py tests/test_trl.py tests/test_peers.py

## make check       the same, with the long sweeps of TT_EXHAUSTIVE=1, under address and undefined-behaviour sanitizers
check: $(TESTS:%=build/sanitize/%) build/sanitize/test_cuda_host
	@export ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1; TT_EXHAUSTIVE=1 tests/run.sh $(filter-out %/test_cuda_host,$^) && tests/run.sh build/sanitize/test_cuda_host

## make race        the threaded parts under the thread sanitizer
race: build/race/test_base build/race/test_header build/race/test_sampler
	@tests/run.sh $^

## make strict      the header without a warning: gcc and clang, C99 and C++11, with and without threads
strict:
	@tests/strict.sh

## make docs-check  compiles and runs the programs of the manual, and every program and command of README.md,
##                  long ones shortened (DOCS_FULL=1: not)
docs-check: $(EXAMPLES)
	@CC="$(CC)" tests/test_docs.sh

# Forced kernels: what they compute goes through these tests.
KERNEL_TESTS := $(patsubst %,build/test_%,kernels autograd model sampler parity optimizer golden grpo think trainer)

## make test-kernels the tests of the arithmetic with each set of CPU kernels forced
test-kernels: build/generate $(KERNEL_TESTS)
	@TT_EXHAUSTIVE=1 tests/kernels.sh $(KERNEL_TESTS)

## make clean       removes build/
clean:
	rm -rf build

build build/sanitize build/race build/cuda:
	mkdir -p $@

$(EXAMPLES): build/%: examples/%.c tests/linked.h $(wildcard examples/*.h) build/thinktuning.o
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(LINKED) $< build/thinktuning.o -o $@ $(LDFLAGS) $(THREADS) $(LDLIBS)

build/thinktuning.o: OBJECT_CFLAGS = $(CFLAGS)
build/sanitize/thinktuning.o: OBJECT_CFLAGS = $(SANITIZE)
build/race/thinktuning.o: OBJECT_CFLAGS = $(RACE)
build/cuda/thinktuning.o: OBJECT_CFLAGS = $(CFLAGS) -DTT_CUDA
$(patsubst %,%/thinktuning.o,build build/sanitize build/race build/cuda): $(LIBRARY) | build/sanitize build/race build/cuda
	$(COMPILING)
	$(CC) $(STD) $(WARN) $(OBJECT_CFLAGS) $(CPPFLAGS) -x c -DTHINKTUNING_IMPLEMENTATION -c $< -o $@

build/test_study build/sanitize/test_study: examples/study.c
build/test_%: tests/test_%.c $(HARNESS) build/thinktuning.o
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $(LINKED) $< build/thinktuning.o -o $@ $(LDFLAGS) $(THREADS) $(LDLIBS)

build/sanitize/test_%: tests/test_%.c $(HARNESS) build/sanitize/thinktuning.o
	$(CC) $(STD) $(WARN) $(SANITIZE) $(CPPFLAGS) $(LINKED) $< build/sanitize/thinktuning.o -o $@ $(LDFLAGS) $(THREADS) $(LDLIBS)

build/race/test_%: tests/test_%.c $(HARNESS) build/race/thinktuning.o
	$(CC) $(STD) $(WARN) $(RACE) $(CPPFLAGS) $(LINKED) $< build/race/thinktuning.o -o $@ $(LDFLAGS) $(THREADS) $(LDLIBS)

# What the header is as a file needs compilations of its own: as C with a user and a private copy beside it, and as C++.
build/test_header: FLAGS = -O0
build/sanitize/test_header: FLAGS = $(SANITIZE)
build/race/test_header: FLAGS = $(RACE)
build/test_header build/sanitize/test_header build/race/test_header: %/test_header: tests/test_header.c $(HEADER_UNITS) $(HARNESS) %/thinktuning.o
	$(COMPILING)
	$(CC) $(STD) $(WARN) $(FLAGS) $(CPPFLAGS) $< $(HEADER_UNITS) $(@D)/thinktuning.o -o $@ $(LDFLAGS) $(THREADS) $(LDLIBS)

build/test_header_cpp: tests/header_cpp.cpp $(HARNESS) | build
	$(COMPILING)
	$(CXX) -std=c++11 $(WARN) -O0 $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

.PHONY: help demo study study-feedback examples test check race strict docs-check test-kernels clean
