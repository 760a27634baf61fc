// tests/wasi.mjs PROGRAM.wasm ARGUMENT...: runs a program for WASI with node, in this folder and environment.
import { WASI } from 'node:wasi';
import { readFileSync } from 'node:fs';

const [, , path, ...rest] = process.argv;
const wasi = new WASI({ version: 'preview1', args: [path, ...rest], env: process.env, preopens: { '.': '.' } });
const { instance } = await WebAssembly.instantiate(readFileSync(path), wasi.getImportObject());
process.exit(wasi.start(instance));
