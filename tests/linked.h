/* tests/linked.h - the implementation is compiled once. Forced in front of a file (-include) that is linked
 * with build/thinktuning.o: the file may use private names, whose static functions it gets copies of,
 * while the bodies of the public ones are read and left out; those of the object are called.
 * Compiled with -fno-inline, so that the bodies are not looked at again. For gcc and clang.
 * A system header, because this is no C99; warnings of the library are the matter of tests/strict.sh. */
#pragma GCC system_header
#define TT_API extern inline __attribute__((gnu_inline))
#define THINKTUNING_IMPLEMENTATION
#include "../thinktuning.h"
#undef THINKTUNING_IMPLEMENTATION
