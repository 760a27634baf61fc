/* tests/linked.h - the implementation is compiled once. Forced in front of a file (-include) that is linked
 * with build/thinktuning.o, in place of the implementation that the file includes itself.
 *
 * With LINKED_PUBLIC, for a file that uses public names alone: the public part, and what the implementation
 * includes of the C library.
 *
 * Without, the file may use private names, whose static functions it gets copies of, while the bodies of the
 * public ones are read and left out; those of the object are called. Compiled with -fno-inline, so that the
 * bodies are not looked at again. For gcc and clang.
 *
 * A system header, because this is no C99; warnings of the library are the matter of tests/strict.sh. */
#pragma GCC system_header
#define THINKTUNING_IMPLEMENTATION
#ifdef LINKED_PUBLIC
#define TTI_IMPLEMENTED        /* there already, the header's two parts say */
#define TTI_UNICODE_TABLES
#else
#define TT_API extern inline __attribute__((gnu_inline))
#endif
#include "../thinktuning.h"
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#undef THINKTUNING_IMPLEMENTATION
