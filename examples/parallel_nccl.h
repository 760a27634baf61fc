/* parallel_nccl.h - the part of parallel_mpi.h that meets the trainer: which hook sums the gradients.
 *
 *     make cuda-nccl
 *     mpirun -np 4 sh -c 'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK TT_BACKEND=cuda \
 *         exec build/cuda/thinktune-nccl --out runs/four'
 *
 * With -DTT_CUDA_NCCL (and TT_MPI, TT_CUDA) gradients stay on the GPUs, one for each process: NCCL sums them,
 * and MPI brings the processes together and carries what the host sums. Where the backend is the CPU all the
 * same, MPI sums. */
#ifndef PARALLEL_NCCL_H
#define PARALLEL_NCCL_H

#ifdef TT_CUDA_NCCL
static tt_nccl *parallel_nccl;         /* of the one context that trains; lives as long as the process */

/* The hook's user: a communicator on the context's GPU, made by all ranks at once. */
static void *parallel_user(tt_context *ctx, int ordered) {
    char id[TT_NCCL_ID_BYTES] = {0};
    int bad = 0;
    if (parallel_nccl || strcmp(tt_backend_get(ctx)->name, "cuda") != 0) { return parallel_nccl; }
    if (parallel_rank == 0) { bad = tt_nccl_id(ctx, id) != TT_OK; }
    MPI_Bcast(id, (int)sizeof id, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (!parallel_any(bad)) {
        parallel_nccl = tt_nccl_create(ctx, id, parallel_rank, parallel_size, ordered);
    }
    if (!parallel_nccl) {
        fprintf(stderr, "rank %d: %s\n", parallel_rank, tt_error(ctx));
        exit(1);
    }
    return parallel_nccl;
}

static tt_status parallel_hook(void *user, float *data, size_t n) {
    return user ? tt_nccl_allreduce(user, data, n) : parallel_allreduce(NULL, data, n);
}
#else
static inline void *parallel_user(tt_context *ctx, int ordered) {
    (void)ctx, (void)ordered;
    return NULL;
}
#define parallel_hook parallel_allreduce
#endif

static tt_reducer *parallel_reducer(tt_context *ctx, tt_model *model, int n_parts) {
    tt_reducer_desc d = TT_INIT;
    d.model = model;
    d.allreduce = parallel_hook;
    d.user = parallel_user(ctx, n_parts > 0);
    d.rank = parallel_rank;
    d.world_size = parallel_size;
    d.n_parts = n_parts;
    return tt_reducer_create(ctx, &d);
}
#endif
