/* parallel_mpi.h - one program, several processes: the library's allreduce hook over MPI (MPI-3, any implementation).
 *
 *     make mpi && mpirun -np 4 build/thinktune-mpi --out runs/four
 *
 * Without -DTT_MPI everything here is one process. Sums are the same on every rank and every time: they are taken in the
 * order of ranks, 2, 4, 8, ... of them as a binary tree, which is what tt_reducer asks of a hook. Each rank sums one slice
 * of the data and hands it to the others; that moves 2 (ranks - 1) / ranks of the data per rank, whatever their number. */
#ifndef PARALLEL_MPI_H
#define PARALLEL_MPI_H

static int parallel_rank, parallel_size = 1;

#ifndef TT_MPI
static void parallel_begin(int *argc, char ***argv) { (void)argc; (void)argv; }
static inline int parallel_any(int flag) { return flag; }
static inline double parallel_add(double value) { return value; }
static void parallel_end(void) {}
static tt_status (*const parallel_allreduce)(void *user, float *data, size_t n) = NULL;
#else
#include <mpi.h>
enum { PARALLEL_PIECE = 1 << 22 };     /* floats on their way at once: 16 MB, and as many again */
static int parallel_running;
static float *parallel_slices;         /* [PARALLEL_PIECE] */

/* A rank that leaves before parallel_end takes the others with it: they would wait for it for ever. */
static void parallel_abort(void) {
    if (!parallel_running) return;
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
    parallel_slices = (float *)malloc(PARALLEL_PIECE * sizeof(float));
    if (!parallel_slices) exit(1);
    if (parallel_rank > 0 && !freopen(getenv("COMSPEC") ? "NUL" : "/dev/null", "w", stdout)) exit(1);
}
static void parallel_end(void) {
    parallel_running = 0;
    free(parallel_slices);
    MPI_Finalize();
}
/* Is the flag set on any rank? All ranks get the same answer, so that they stop at the same step. */
static inline int parallel_any(int flag) {
    int any = flag;
    MPI_Allreduce(&flag, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return any;
}
/* The sum of a number that is only shown; the order is MPI's. */
static inline double parallel_add(double value) {
    double sum = value;
    MPI_Allreduce(&value, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    return sum;
}
/* slices[begin] += slices[begin + 1 .. begin + count), each of n values. */
static void parallel_sum(float *slices, int begin, int count, int n) {
    int half = count % 2 ? count - 1 : count / 2, i;
    float *a = slices + (size_t)begin * (size_t)n, *b = a + (size_t)half * (size_t)n;
    if (count == 1) return;
    parallel_sum(slices, begin, half, n);
    parallel_sum(slices, begin + half, count - half, n);
    for (i = 0; i < n; i++) a[i] += b[i];
}
/* The hook: data[0..n) becomes the sum over all ranks. An error inside MPI ends the job with MPI's own message. */
static tt_status parallel_allreduce(void *user, float *data, size_t n) {
    int most = PARALLEL_PIECE / parallel_size;
    (void)user;
    while (n > 0) {
        int slice = n / (size_t)parallel_size < (size_t)most ? (int)(n / (size_t)parallel_size) : most, piece = slice * parallel_size;
        if (slice > 0) {
            MPI_Alltoall(data, slice, MPI_FLOAT, parallel_slices, slice, MPI_FLOAT, MPI_COMM_WORLD);
            parallel_sum(parallel_slices, 0, parallel_size, slice);
            MPI_Allgather(parallel_slices, slice, MPI_FLOAT, data, slice, MPI_FLOAT, MPI_COMM_WORLD);
        } else {                       /* the last values, fewer than ranks: each rank sums them all */
            piece = (int)n;
            MPI_Allgather(data, piece, MPI_FLOAT, parallel_slices, piece, MPI_FLOAT, MPI_COMM_WORLD);
            parallel_sum(parallel_slices, 0, parallel_size, piece);
            memcpy(data, parallel_slices, (size_t)piece * sizeof *data);
        }
        data += piece;
        n -= (size_t)piece;
    }
    return TT_OK;
}
#endif
#include "parallel_nccl.h"
#endif
