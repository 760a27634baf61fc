# The page build/web/index.html: included by the Makefile, whose variables it uses. It wants clang with wasm-ld and a C
# library for WebAssembly (on Debian: apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32).
WASM_CC     ?= clang --target=wasm32-wasi
WASM_CFLAGS := -std=c99 -O2 -msimd128
WASM_STACK  := -Wl,--stack-first,-z,stack-size=1048576
WASM_LINK   := -mexec-model=reactor $(WASM_STACK),--import-memory,--initial-memory=4194304,--strip-all
# What stands behind the page in its file, as base64: id and path.
WEB_PARTS   := $(patsubst %,base/%,config.json tokenizer.json model.safetensors) web.wasm
WEB_MOST    := 3000000

## make web         build/web/index.html: both trainings in a browser tab, one file (clang with wasm32, wasi-libc)
web: build/web/index.html

build/web:
	mkdir -p $@

build/web/native: examples/web.c $(LIBRARY) $(wildcard examples/*.h) | build/web
	$(COMPILING)
	$(CC) $(STD) $(WARN) $(CFLAGS) $(CPPFLAGS) $< -o $@ $(LDFLAGS) $(LDLIBS)

# The stamp says that the base is whole. Its bits depend on the kernels of this CPU, not on its number of threads.
build/web/base/stamp: build/web/native
	build/web/native base build/web/base
	touch $@

build/web/web.wasm: examples/web.c $(LIBRARY) $(wildcard examples/*.h) | build/web
	$(COMPILING)
	$(WASM_CC) $(WASM_CFLAGS) $(WARN) $(WASM_LINK) $< -o $@ -lm

build/web/index.html: examples/web.html build/web/web.wasm build/web/base/stamp
	{ cat $< && for part in $(WEB_PARTS); do printf '<script type="text/plain" id="%s">' $$part && \
	  base64 < build/web/$$part | tr -d '\n' && echo '</script>' || exit 1; done; } > $@.part
	@test $$(wc -c < $@.part) -le $(WEB_MOST) || { echo "$@ would be larger than $(WEB_MOST) bytes"; exit 1; }
	mv $@.part $@

# Node 20 has WebSocket, by which Firefox is driven, only on request; and may crash as it ends unless it has one thread.
WEB_NODE  = node --single-threaded $(shell node --experimental-websocket -e 0 2> /dev/null && echo --experimental-websocket)
WEB_LACKS = $(shell command -v node > /dev/null || { echo node; exit; }; echo 'int main(void) { return 0; }' | \
  $(WASM_CC) -x c - -o build/web/link.wasm 2> /dev/null || echo 'a compiler for wasm32 (clang, lld, wasi-libc, compiler-rt)')

## make test-web    the page under node and in a headless Chromium, what of these is there
test-web: | build/web
	@lacks="$(WEB_LACKS)"; if [ -n "$$lacks" ]; then echo "skip the page: no $$lacks"; echo '0 passed, 0 failed'; \
	  else $(MAKE) --no-print-directory web && $(WEB_NODE) tests/test_web.mjs; fi

## make web-picture draws bench/web.png, the picture of the page in README.md
web-picture: web
	node tests/test_web.mjs picture

.PHONY: web test-web web-picture
