# One GPU (tt_cuda.cu), several processes (MPI), several GPUs (NCCL): included by the Makefile, whose variables it uses.
# The GPU: tt_cuda.cu and everything linked with it, in build/cuda. Tests run there if a device is to be seen.
NVCC      ?= nvcc
NVCC_PATH := $(shell command -v $(NVCC) 2> /dev/null)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(NVCC_PATH))
CUDA_ARCH ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
  -gencode arch=compute_80,code=compute_80
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcudart -lstdc++
CUDA_COMPILE = $(NVCC) -O3 -std=c++14 $(CUDA_ARCH) -Werror all-warnings -Xcompiler -Wall,-Wextra
CUDA_BENCHES  := $(patsubst %,build/cuda/bench_%,gemm train generate grpo)
CUDA_PROGRAMS := $(patsubst build/%,build/cuda/%,$(EXAMPLES)) $(CUDA_BENCHES)
CUDA_TESTED   := build/cuda/test_cuda \
  $(patsubst %,build/cuda/test_%,autograd model checkpoint sampler optimizer grpo think trainer)
ifneq ($(and $(NVCC_PATH),$(wildcard /dev/nvidia0 /dev/dxg)),)
CUDA_TESTS := $(CUDA_TESTED) build/cuda/test_cuda_small
endif
# Several processes: the same programs over MPI. For MPICH beside Open MPI: MPICC=mpicc.mpich MPIRUN=mpirun.mpich.
MPICC    ?= mpicc
MPIRUN   ?= mpirun
MPI_PROGRAMS := $(patsubst %,build/%-mpi,thinktune pretrain sft)
# Several GPUs: NCCL sums, MPI brings the processes together. NCCL_HOME: where include and lib of NCCL are, if not
# CUDA's.
NCCL_HOME     ?= $(CUDA_HOME)
NCCL_LIBS     := -L$(NCCL_HOME)/lib64 -L$(NCCL_HOME)/lib -Wl,-rpath,$(NCCL_HOME)/lib64:$(NCCL_HOME)/lib -lnccl
NCCL_PROGRAMS := $(patsubst %,build/cuda/%-nccl,thinktune pretrain sft)

## make cuda        tt_cuda.cu, and tests, examples and benches linked with it, in build/cuda (needs nvcc)
cuda: build/tt_cuda.o $(CUDA_TESTED) $(CUDA_PROGRAMS)

## make test-cuda-host  the kernels of tt_cuda.cu on the CPU, against the CPU's own (CXX)
test-cuda-host: build/test_cuda_host
	@tests/run.sh $<

NO_DEVICE_CHECK = echo 'skipped: the GPU under compute-sanitizer: no device'
## make cuda-check  the tests on the GPU and a short training under compute-sanitizer
cuda-check: $(if $(CUDA_TESTS),build/cuda/test_cuda build/cuda/pretrain)
	@$(if $(CUDA_TESTS),CUDA_HOME="$(CUDA_HOME)" tests/cuda_check.sh,$(NO_DEVICE_CHECK))

RUN_CUDA_BENCHES = { for math in f32 tf32 bf16; do for b in $^; do \
  TT_BACKEND=cuda TT_CUDA_MATH=$$math $$b || echo "FAIL $$b $$math"; done; done; \
  $(PYTHON) bench/peers.py --cuda || echo "FAIL peers.py"; } | tee build/bench/cuda-log; \
  ! grep '^FAIL' build/bench/cuda-log
## make bench-cuda  every figure of the GPU in f32, TF32 and bf16, and PyTorch if PYTHON has it, into build/bench/cuda-log
bench-cuda: $(if $(CUDA_TESTS),$(CUDA_BENCHES))      # each precision is a run of its own; a figure's name tells it
	@mkdir -p build/bench
	@$(if $(CUDA_TESTS),$(RUN_CUDA_BENCHES),echo 'skipped: the benches on a GPU: no device')

# The emulated device (tests/cuda_device.cpp) in the place of tt_cuda.o: no GPU, no nvcc. Of the kernels that
# promise bits the naive ones, which take the least time here; the fast ones where tolerances are stated. The tests themselves are compiled without optimization: the time is the device's.
EMULATED_TESTS := $(patsubst %,build/emulated/test_%,autograd checkpoint golden grpo model optimizer parity sampler think trainer)
## make test-device-emulated  every test that uses a device on an emulated one, whose memory is fenced from the host
test-device-emulated: $(EMULATED_TESTS)
	@TT_CUDA_KERNELS=naive tests/run.sh $(EMULATED_TESTS)
	@TT_CUDA_KERNELS=fast tests/run.sh build/emulated/test_model

## make gpu-proof   all that a GPU has to show in at most 8 minutes, into build/gpu-proof (GPU_PROOF_DRY=1: a rehearsal without one)
gpu-proof:
	@PYTHON="$(PYTHON)" NVCC="$(NVCC)" CUDA_HOME="$(CUDA_HOME)" tests/gpu_proof.sh

## make cuda-resources  registers, spills and shared memory of every kernel, into bench/RESULTS.md; fails if one spills (NVCC, PYTHON)
cuda-resources:
	NVCC="$(NVCC)" $(PYTHON) bench/cuda_resources.py bench/RESULTS.md

## make cuda-nccl   build/cuda/thinktune-nccl, pretrain-nccl, sft-nccl: one process a GPU (MPICC, NCCL_HOME)
cuda-nccl: $(NCCL_PROGRAMS)

## make mpi         build/thinktune-mpi, pretrain-mpi, sft-mpi for mpirun (MPICC)
mpi: $(MPI_PROGRAMS)

## make test-mpi    compares 1, 2 and 4 processes, if MPICC is there (MPIRUN)
test-mpi: build/thinktuning.o
	@MPICC="$(MPICC)" MPIRUN="$(MPIRUN)" tests/run.sh tests/test_mpi.sh

## make bench-mpi   a training step shared by 1 and 2 processes
bench-mpi: build/bench_parallel build/bench_parallel-mpi
	build/bench_parallel 1 && build/bench_parallel 2
	$(MPIRUN) -np 1 build/bench_parallel-mpi 1 && $(MPIRUN) -np 2 build/bench_parallel-mpi 1

$(MPI_PROGRAMS): build/%-mpi: examples/%.c tests/linked.h $(wildcard examples/*.h) build/thinktuning.o
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(LINKED) -DTT_MPI $< build/thinktuning.o -o $@ $(LDFLAGS) $(LDLIBS)

build/bench_parallel build/bench_parallel-mpi: examples/parallel_mpi.h
build/bench_parallel-mpi: bench/bench_parallel.c $(LIBRARY) | build
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_MPI $< -o $@ $(LDFLAGS) $(LDLIBS)

# The kernels of tt_cuda.cu on the CPU, beside the library's object: CC and CXX are of one family.
CUDA_HOST := tests/test_cuda_host.cpp tests/cuda_host.h tests/nccl_host.h tt_cuda.cu $(HARNESS)
build/test_cuda_host: $(CUDA_HOST) build/thinktuning.o
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $(LINKED) $< build/thinktuning.o -o $@ \
	  $(LDFLAGS) $(THREADS) $(LDLIBS)

build/sanitize/test_cuda_host: $(CUDA_HOST) build/sanitize/thinktuning.o
	$(CXX) -std=c++11 $(WARN) $(SANITIZE) $(CPPFLAGS) $(LINKED) $< build/sanitize/thinktuning.o -o $@ \
	  $(LDFLAGS) $(THREADS) $(LDLIBS)

build/emulated/tt_cuda.o: tests/cuda_device.cpp tests/cuda_host.h tt_cuda.cu $(LIBRARY)
	@mkdir -p $(@D)
	$(CXX) -std=c++11 $(WARN) -O2 -g -U_FORTIFY_SOURCE $(CPPFLAGS) -c $< -o $@

build/emulated/test_%: tests/test_%.c $(HARNESS) build/thinktuning.o build/emulated/tt_cuda.o
	$(CC) $(STD) $(WARN) -O0 -g $(CPPFLAGS) $(LINKED) -DTT_TEST_CUDA -DTT_TEST_EMULATED $< build/thinktuning.o \
	  build/emulated/tt_cuda.o -o $@ $(LDFLAGS) -lstdc++ -lpthread $(LDLIBS)

# Programs on the emulated device, for the rehearsal of gpu-proof.
build/emulated/bench_%: bench/bench_%.c bench/bench.h $(LIBRARY) build/emulated/tt_cuda.o
	$(CC) $(STD) $(WARN) -O0 -g $(CPPFLAGS) $(BENCH_DEFINES) -DTT_CUDA $< build/emulated/tt_cuda.o -o $@ \
	  $(LDFLAGS) -lstdc++ -lpthread $(LDLIBS)

build/emulated/%: examples/%.c $(LIBRARY) $(wildcard examples/*.h) build/emulated/tt_cuda.o
	$(CC) $(STD) $(WARN) -O0 -g $(CPPFLAGS) -DTT_CUDA $< build/emulated/tt_cuda.o -o $@ $(LDFLAGS) -lstdc++ -lpthread $(LDLIBS)

build/tt_cuda.o: tt_cuda.cu $(LIBRARY) | build
	$(CUDA_COMPILE) -c $< -o $@

build/tt_cuda_nccl.o: tt_cuda.cu $(LIBRARY) | build
	$(CUDA_COMPILE) -DTT_CUDA_NCCL -I$(NCCL_HOME)/include -c $< -o $@

build/cuda/%-nccl: examples/%.c $(LIBRARY) $(wildcard examples/*.h) build/tt_cuda_nccl.o | build/cuda
	$(MPICC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) -DTT_MPI -DTT_CUDA -DTT_CUDA_NCCL $< build/tt_cuda_nccl.o -o $@ \
	  $(LDFLAGS) $(NCCL_LIBS) $(CUDA_LIBS) $(LDLIBS)

# The operators once more, against the CPU backend, on the device.
build/cuda/test_cuda: tests/test_cuda_host.cpp $(HARNESS) build/thinktuning.o build/tt_cuda.o
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $(LINKED) -DTT_TEST_CUDA $< build/thinktuning.o build/tt_cuda.o \
	  -o $@ $(LDFLAGS) $(CUDA_LIBS) -lpthread $(LDLIBS)

# The same over blocks of the vocabulary and a ring that are small enough for every boundary to be crossed.
CUDA_SMALL := -DTTI_CUDA_RING='((size_t)1<<12)' -DTTI_CUDA_WORKSPACE='((size_t)1<<25)' \
  -DTTI_CUDA_VOCAB_ROWS='((size_t)40)' -DTTI_CUDA_VOCAB_BLOCK='((size_t)150)'
build/tt_cuda_small.o: tt_cuda.cu $(LIBRARY) | build
	$(CUDA_COMPILE) $(CUDA_SMALL) -c $< -o $@

build/cuda/test_cuda_small: tests/test_cuda_host.cpp $(HARNESS) build/thinktuning.o build/tt_cuda_small.o
	$(CXX) -std=c++11 $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $(LINKED) -DTT_TEST_CUDA $< build/thinktuning.o \
	  build/tt_cuda_small.o -o $@ $(LDFLAGS) $(CUDA_LIBS) -lpthread $(LDLIBS)

build/cuda/test_%: tests/test_%.c $(HARNESS) build/thinktuning.o build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(TEST_CFLAGS) $(CPPFLAGS) $(LINKED) -DTT_TEST_CUDA $< build/thinktuning.o build/tt_cuda.o -o $@ \
	  $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

# TT_BACKEND=cuda puts them on the device.
build/cuda/bench_%: bench/bench_%.c bench/bench.h $(LIBRARY) build/tt_cuda.o | build/cuda
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(BENCH_DEFINES) -DTT_CUDA $< build/tt_cuda.o -o $@ \
	  $(LDFLAGS) $(CUDA_LIBS) -lpthread $(LDLIBS)

build/cuda/%: examples/%.c tests/linked.h $(wildcard examples/*.h) build/cuda/thinktuning.o build/tt_cuda.o
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $(LINKED) -DTT_CUDA $< build/cuda/thinktuning.o build/tt_cuda.o -o $@ \
	  $(LDFLAGS) $(CUDA_LIBS) -lpthread $(LDLIBS)

.PHONY: test-cuda-host gpu-proof cuda-resources test-device-emulated cuda cuda-check bench-cuda cuda-nccl mpi test-mpi bench-mpi
