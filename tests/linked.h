/* tests/linked.h - the implementation is compiled once. Forced in front of a file (-include) that is linked with
 * build/thinktuning.o: the file may use private names, whose static functions it gets copies of, while the bodies of
 * the public ones are read and left out; those of the object are called. Compiled with -fno-inline, so that the bodies
 * are not looked at again. For gcc and clang; as a system header, for that is no C99 and -Wall has its own test. */
#pragma GCC system_header
#define TT_API extern inline __attribute__((gnu_inline))
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#undef THINKTUNING_IMPLEMENTATION
