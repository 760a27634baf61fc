/* nccl_host.h - what tt_cuda.cu calls of NCCL, between processes that were forked from one: each has its own stand-in for a
 * GPU (cuda_host.h), and a mailbox for every pair of ranks lies in memory that they share. Sends and receives of a group
 * are done at its end: all send, all wait for each other, all receive. Include it behind cuda_host.h. */
#ifndef NCCL_HOST_H
#define NCCL_HOST_H
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define TTI_NCCL_PIECE ((size_t)64)      /* small, so that data is cut into several pieces */
enum { NCCL_HOST_RANKS = 8 };
typedef enum { ncclSuccess = 0, ncclInvalidArgument = 4 } ncclResult_t;
typedef enum { ncclFloat = 7 } ncclDataType_t;
typedef enum { ncclSum = 0 } ncclRedOp_t;
typedef struct ncclUniqueId { char internal[128]; } ncclUniqueId;
struct nccl_host_shared {
    pthread_barrier_t barrier;
    float box[NCCL_HOST_RANKS][NCCL_HOST_RANKS][1 << 13];      /* from, to */
    size_t sent[NCCL_HOST_RANKS];                              /* floats that left each rank */
};
typedef struct nccl_host_comm { nccl_host_shared *shared; int rank, size; } *ncclComm_t;
static nccl_host_shared *nccl_host;      /* mapped before the fork */
static struct { float *to; size_t n; int peer; ncclComm_t comm; cudaStream_t stream; } nccl_host_receives[NCCL_HOST_RANKS];
static int nccl_host_open, nccl_host_n_receives, nccl_host_fail;      /* fail: the next call fails */

static const char *ncclGetErrorString(ncclResult_t) { return "invalid argument"; }
static ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 7, sizeof *id);
    return ncclSuccess;
}
static ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank) {
    if (nccl_host_fail || id.internal[127] != 7) { return ncclInvalidArgument; }
    *comm = new nccl_host_comm();
    (*comm)->shared = nccl_host;
    (*comm)->rank = rank;
    (*comm)->size = size;
    return ncclSuccess;
}
static ncclResult_t ncclCommDestroy(ncclComm_t comm) { delete comm; return ncclSuccess; }
static void nccl_host_put(ncclComm_t comm, int to, const void *from, size_t n, cudaStream_t stream) {
    cudaMemcpyAsync(comm->shared->box[comm->rank][to], from, n * sizeof(float), cudaMemcpyDeviceToHost, stream);
    if (to != comm->rank) { comm->shared->sent[comm->rank] += n; }
}
static void nccl_host_get(ncclComm_t comm, int from, void *to, size_t n, cudaStream_t stream) {
    cudaMemcpyAsync(to, comm->shared->box[from][comm->rank], n * sizeof(float), cudaMemcpyHostToDevice, stream);
}
static void nccl_host_wait(ncclComm_t comm) { pthread_barrier_wait(&comm->shared->barrier); }
static ncclResult_t ncclGroupStart() { nccl_host_open++; return nccl_host_fail ? ncclInvalidArgument : ncclSuccess; }
static ncclResult_t ncclSend(const void *from, size_t n, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    if (!nccl_host_open) { return ncclInvalidArgument; }
    nccl_host_put(comm, peer, from, n, stream);
    return ncclSuccess;
}
static ncclResult_t ncclRecv(void *to, size_t n, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    if (!nccl_host_open || nccl_host_n_receives == NCCL_HOST_RANKS) { return ncclInvalidArgument; }
    nccl_host_receives[nccl_host_n_receives].to = (float *)to;
    nccl_host_receives[nccl_host_n_receives].n = n;
    nccl_host_receives[nccl_host_n_receives].peer = peer;
    nccl_host_receives[nccl_host_n_receives].comm = comm;
    nccl_host_receives[nccl_host_n_receives++].stream = stream;
    return ncclSuccess;
}
static ncclResult_t ncclGroupEnd() {
    ncclComm_t comm = nccl_host_n_receives ? nccl_host_receives[0].comm : NULL;
    nccl_host_open--;
    if (!comm) { return ncclSuccess; }
    nccl_host_wait(comm);
    for (int i = 0; i < nccl_host_n_receives; i++) {
        nccl_host_get(comm, nccl_host_receives[i].peer, nccl_host_receives[i].to, nccl_host_receives[i].n, nccl_host_receives[i].stream);
    }
    nccl_host_n_receives = 0;
    nccl_host_wait(comm);      /* nobody sends again before all have read */
    return ncclSuccess;
}
static ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t, ncclComm_t comm, cudaStream_t stream) {
    for (int r = 0; r < comm->size; r++) { nccl_host_put(comm, r, from, n, stream); }
    nccl_host_wait(comm);
    for (int r = 0; r < comm->size; r++) { nccl_host_get(comm, r, (float *)to + (size_t)r * n, n, stream); }
    nccl_host_wait(comm);
    return ncclSuccess;
}
/* Not in the order of a tree: the last rank first. */
static ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t, ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
    static float sum[1 << 13];
    if (nccl_host_fail) { return ncclInvalidArgument; }
    for (int r = 0; r < comm->size; r++) { nccl_host_put(comm, r, from, n, stream); }
    nccl_host_wait(comm);
    memset(sum, 0, sizeof sum);
    for (int r = comm->size - 1; r >= 0; r--) {
        for (size_t i = 0; i < n; i++) { sum[i] += comm->shared->box[r][comm->rank][i]; }
    }
    cudaMemcpyAsync(to, sum, n * sizeof(float), cudaMemcpyHostToDevice, stream);
    nccl_host_wait(comm);
    return ncclSuccess;
}
#endif
