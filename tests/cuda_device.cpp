/* cuda_device.cpp - the emulated device as an object that programs link in the place of tt_cuda.o: tt_cuda.cu
 * with the stand-ins of cuda_host.h. Its memory is fenced: what the host touches is a fault, and so is memory
 * that is still there at the end (make test-device-emulated). CUDA_HOST_CAPABILITY, CUDA_HOST_SHARED and
 * CUDA_HOST_DEVICES of the environment describe another device: compute capability (9), bytes of shared
 * memory a block can have (232448), number (1). */
#include "../thinktuning.h"
#define TTI_CUDA_HOST
#include "cuda_host.h"
#include "../tt_cuda.cu"
#include <signal.h>
#include <unistd.h>

static void host_say(const char *text) {
    if (write(STDOUT_FILENO, text, strlen(text)) < 0) { _exit(3); }
}

/* Dies of it, so that the place is on the stack of a debugger. */
static void host_touched(int number, siginfo_t *info, void *) {
    const char *at = (const char *)info->si_addr;
    if (host.region && at >= host.region && at < host.region + HOST_REGION) {
        host_say("  cuda_host: the host touches device memory\n");
    }
    signal(number, SIG_DFL);
    raise(number);
}

static long host_setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && value[0] ? atol(value) : otherwise;
}

struct host_device {
    host_device() {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = host_touched;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, NULL);
        host.fenced = 1;
        host.n_devices = (int)host_setting("CUDA_HOST_DEVICES", 1);
        host.capability = (int)host_setting("CUDA_HOST_CAPABILITY", 9);
        host.shared_limit = (size_t)host_setting("CUDA_HOST_SHARED", 232448);
        host.limit = (size_t)1 << 40;
    }

    ~host_device() {
        if (host.used) {
            printf("  cuda_host: %lu bytes of device memory were not freed\n", (unsigned long)host.used);
        }
        fflush(NULL);
        if (host.used || host.faults) { _exit(3); }
    }
};

static host_device the_device;
