/* Macros that hosts leave behind, as thinktuning.h meets them when it is included last. Those that can be are junk here, so
 * that any use of the name is an error; those with arguments are of no use in an expression. Not among them: names of public
 * fields that a host merely renames (R's length, Rmath's beta). */
#define JUNK ) this name is a macro of the host (
/* windows.h */
#define near JUNK
#define far JUNK
#define small JUNK
#define hyper JUNK
#define huge JUNK
#define pascal JUNK
#define cdecl JUNK
#define interface JUNK
#define IN JUNK
#define OUT JUNK
#define OPTIONAL JUNK
#define CONST JUNK
#define VOID JUNK
#define DELETE JUNK
#define ERROR JUNK
#define NO_ERROR JUNK
#define IGNORE JUNK
#define TEXT JUNK
#define RGB JUNK
#define STRICT JUNK
#define CALLBACK JUNK
#define TRANSPARENT JUNK
#define ALTERNATE JUNK
#define RELATIVE JUNK
#define ABSOLUTE JUNK
#define min(a, b) JUNK
#define max(a, b) JUNK
#define Yield() JUNK
/* X11 */
#define None JUNK
#define Bool JUNK
#define Status JUNK
#define Success JUNK
#define True JUNK
#define False JUNK
#define Always JUNK
#define Above JUNK
#define Below JUNK
#define Complex JUNK
#define Expose JUNK
#define FocusIn JUNK
#define KeyPress JUNK
#define Unsorted JUNK
#define BadValue JUNK
#define Opposite JUNK
/* curses */
#define OK JUNK
#define ERR JUNK
#define clear() JUNK
#define erase() JUNK
#define move(y, x) JUNK
#define timeout(delay) JUNK
#define refresh() JUNK
#define echochar(c) JUNK
#define getch() JUNK
#define box(window, v, h) JUNK
#define border(ls, rs, ts, bs, tl, tr, bl, br) JUNK
#define inch() JUNK
#define instr(text) JUNK
#define scroll(window) JUNK
#define standout() JUNK
#define attrset(attributes) JUNK
/* Arduino */
#define abs(x) JUNK
#define round(x) JUNK
#define sq(x) JUNK
#define constrain(x, low, high) JUNK
#define radians(x) JUNK
#define degrees(x) JUNK
#define word(...) JUNK
#define bit(b) JUNK
#define F(text) JUNK
#define PI JUNK
#define TWO_PI JUNK
#define EULER JUNK
#define HIGH JUNK
#define LOW JUNK
#define INPUT JUNK
#define OUTPUT JUNK
#define CHANGE JUNK
#define DEFAULT JUNK
#define EXTERNAL JUNK
#define B0 JUNK
#define B1 JUNK
#define B10 JUNK
#define _BV(bit) JUNK
/* R, Qt, complex.h, sys/param.h and what debuggers of all kinds define */
#define eval Rf_eval
#define error Rf_error
#define match Rf_match
#define trunc ftrunc
#define TRUE JUNK
#define FALSE JUNK
#define BOOL JUNK
#define PROBLEM JUNK
#define WARN JUNK
#define slots JUNK
#define signals JUNK
#define emit JUNK
#define foreach JUNK
#define forever JUNK
#define I JUNK
#define MIN(a, b) JUNK
#define MAX(a, b) JUNK
#define ABS(a) JUNK
#define CHECK(x) JUNK
#define LOG(x) JUNK
#define DEBUG JUNK
#define TEST JUNK
#define PASS JUNK
#define FAIL JUNK
#define check(x) JUNK
#define verify(x) JUNK
#define require(x) JUNK
