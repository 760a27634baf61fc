/* parallel_mpi.h - one program, several processes: the allreduce hook over MPI (MPI-3, any implementation).
 *
 *     make mpi && mpirun -np 4 build/thinktune-mpi --out runs/four
 *
 * Without -DTT_MPI everything here is one process. Sums are the same on every rank and every time: they are
 * taken in the order of ranks, 2, 4, 8, ... of them as a binary tree, which is what tt_reducer asks of a
 * hook. Each rank sums one slice of the data and hands it to the others; that moves 2 (ranks - 1) / ranks of
 * the data per rank, whatever their number. */
#ifndef PARALLEL_MPI_H
#define PARALLEL_MPI_H
static int parallel_rank, parallel_size = 1;

#ifndef TT_MPI
static void parallel_begin(int *argc, char ***argv) { (void)argc, (void)argv; }
static inline int parallel_any(int flag) { return flag; }
static inline double parallel_add(double value) { return value; }
static void parallel_end(void) {}

static tt_status (*const parallel_allreduce)(void *user, float *data, size_t n) = NULL;
#else
#include <mpi.h>
#ifndef PARALLEL_BLOCK
#define PARALLEL_BLOCK (1 << 18)       /* floats that ranks share out among them at a time: 1 MB */
#endif
enum { PARALLEL_BLOCKS = 16 };         /* on their way at once, and as many again                */
static int parallel_running;
static float *parallel_slices;         /* [PARALLEL_BLOCKS * PARALLEL_BLOCK] */

/* A rank that leaves before parallel_end takes the others with it: they would wait for it for ever. */
static void parallel_abort(void) {
    if (!parallel_running) { return; }
    fprintf(stderr, "rank %d of %d left early: all ranks end\n", parallel_rank, parallel_size);
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* Only rank 0 speaks; the errors of all go to stderr. */
static void parallel_begin(int *argc, char ***argv) {
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &parallel_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &parallel_size);
    parallel_running = 1;
    atexit(parallel_abort);
    parallel_slices = (float *)malloc(PARALLEL_BLOCKS * PARALLEL_BLOCK * sizeof(float));
    if (!parallel_slices) { exit(1); }
    if (parallel_rank > 0 && !freopen(getenv("COMSPEC") ? "NUL" : "/dev/null", "w", stdout)) { exit(1); }
}

static void parallel_end(void) {
    parallel_running = 0;
    free(parallel_slices);
    MPI_Finalize();
}

/* Is the flag set on any rank? All ranks get the same answer, so that they stop at the same step. */
static inline int parallel_any(int flag) {
    MPI_Allreduce(MPI_IN_PLACE, &flag, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return flag;
}

/* The sum of a number that is only shown; the order is MPI's. */
static inline double parallel_add(double value) {
    MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return value;
}

/* slices[begin] += slices[begin + 1 .. begin + count), each of n values. */
static void parallel_sum(float *slices, int begin, int count, int n) {
    int half = count % 2 ? count - 1 : count / 2, i;
    float *a = slices + (size_t)begin * (size_t)n, *b = a + (size_t)half * (size_t)n;
    if (count == 1) { return; }
    parallel_sum(slices, begin, half, n);
    parallel_sum(slices, begin + half, count - half, n);
    for (i = 0; i < n; i++) { a[i] += b[i]; }
}

/* n blocks of `slice` values for each rank. All are under way at once, so that both directions of a wire are
 * busy and one is summed while others arrive: 98 MB on a link of 1 Gb/s take 0.95 s, and 1.56 s if each
 * exchange waits for the last one. */
static void parallel_blocks(float *data, int n, int slice) {
    MPI_Request way[PARALLEL_BLOCKS];
    size_t size = (size_t)slice * (size_t)parallel_size, k;
    for (k = 0; k < (size_t)n; k++) {
        MPI_Ialltoall(data + k * size, slice, MPI_FLOAT, parallel_slices + k * size, slice, MPI_FLOAT,
                      MPI_COMM_WORLD, &way[k]);
    }
    for (k = 0; k < (size_t)n; k++) {
        float *slices = parallel_slices + k * size;
        MPI_Wait(&way[k], MPI_STATUS_IGNORE);
        parallel_sum(slices, 0, parallel_size, slice);
        MPI_Iallgather(slices, slice, MPI_FLOAT, data + k * size, slice, MPI_FLOAT, MPI_COMM_WORLD, &way[k]);
    }
    for (k = 0; k < (size_t)n; k++) { MPI_Wait(&way[k], MPI_STATUS_IGNORE); }
}

/* The hook: data[0..n) becomes the sum over all ranks. An error inside MPI ends the job with its message. */
static tt_status parallel_allreduce(void *user, float *data, size_t n) {
    size_t size = (size_t)parallel_size, most = PARALLEL_BLOCK / size, slice, blocks;
    (void)user;
    for (; n >= size; data += blocks * slice * size, n -= blocks * slice * size) {
        slice = n / size < most ? n / size : most;
        blocks = n / (slice * size) < PARALLEL_BLOCKS ? n / (slice * size) : PARALLEL_BLOCKS;
        parallel_blocks(data, (int)blocks, (int)slice);
    }
    if (n > 0) {      /* the last values, fewer than ranks: each rank sums them all */
        MPI_Allgather(data, (int)n, MPI_FLOAT, parallel_slices, (int)n, MPI_FLOAT, MPI_COMM_WORLD);
        parallel_sum(parallel_slices, 0, parallel_size, (int)n);
        memcpy(data, parallel_slices, n * sizeof *data);
    }
    return TT_OK;
}
#endif
#include "parallel_nccl.h"
#endif
