#!/usr/bin/env python3
"""Registers, spills and shared memory of every kernel of tt_cuda.cu, as ptxas gives them.

    python3 bench/cuda_resources.py [RESULTS]       (make cuda-resources)

Compiles for sm_80 and sm_90a with -Xptxas -v and prints a table; with RESULTS puts it into that file's part for it. warps:
how many of them fit a multiprocessor by registers and shared memory, of 164 KB on sm_80 and 228 KB on sm_90a. Exit status 1 if a
kernel spills, or if fewer than 16 warps of attention in bf16 (8 of floats) fit on sm_90a, forward for heads of at most 128 channels, back of 64.
NVCC: the compiler."""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), 'tt_cuda.cu')
ARCHS = {'sm_80': 164, 'sm_90a': 228}                   # KB of shared memory in a multiprocessor
BEGIN, END = '<!-- made by make cuda-resources: begin -->', '<!-- made by make cuda-resources: end -->'
MATHS = 'f32', 'tf32', 'bf16'


def compiled(arch):
    """What ptxas says of one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [os.environ.get('NVCC', 'nvcc'), '-O3', '-std=c++14', f'-arch={arch}', '-cubin', '-Xptxas', '-v', SOURCE, '-o', os.path.join(folder, 'out')]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stderr


def name_of(symbol):
    """tti_gpu_NAME and its template arguments."""
    name = re.search(r'\d+tti_gpu_([a-z0-9_]+?)(?=ILi|E?\d*P|E?v|[A-Z0-9]\w*$)', symbol)
    start = re.search(r'(\d+)tti_gpu_', symbol)
    length = int(re.search(r'(\d{1,2})tti_gpu_', symbol).group(1)[-2:])
    begin = start.end() - len('tti_gpu_')
    return symbol[begin + len('tti_gpu_'):begin + length] if name or start else symbol, [int(x) for x in re.findall(r'Li(\d+)E', symbol)]


def dynamic_shared(name, arguments):
    """Bytes that tt_cuda.cu asks for at the launch; see tti_cuda_tile_bytes."""
    if len(arguments) < 4:
        return 0
    math, dim, rows, lines = arguments[:4]
    own = 1 if 'forward' in name else 2
    tile = dim * (2 if MATHS[math] == 'bf16' else 4)
    return own * rows * tile + 2 * lines * (tile + 4 * dim) + (16 * lines if 'dkv' in name else 0)


def kernels(log, limit):
    """(name, registers, spilled bytes, shared bytes, warps a multiprocessor) of each kernel."""
    for part in re.split(r'Compiling entry function ', log)[1:]:
        name, arguments = name_of(re.match(r"'(\w+)'", part).group(1))
        spills = sum(map(int, re.findall(r'(\d+) bytes spill (?:stores|loads)', part)))
        registers = int(re.search(r'Used (\d+) registers', part).group(1))
        shared = int((re.search(r'(\d+) bytes smem', part) or ['', '0'])[1]) + dynamic_shared(name, arguments)
        threads = (4 if arguments[:2] == [0, 256] else 2) * arguments[2] if len(arguments) > 3 else 256
        warps = threads // 32 * min(65536 // ((registers + 7) // 8 * 8 * threads), limit * 1024 // (shared + 1024), 2048 // threads)
        if arguments:
            name += ' ' + ' '.join([MATHS[arguments[0]]] + [f'{word} {n}' for word, n in zip(('head', 'owns', 'tile'), arguments[1:])] +
                                   [('', ' dk', ' dv', '')[part] for part in arguments[4:]]).replace('  ', ' ').rstrip()
        yield name, registers, spills, shared, warps


def main():
    rows, bad = {}, []
    for arch, limit in ARCHS.items():
        for name, registers, spills, shared, warps in kernels(compiled(arch), limit):
            rows.setdefault(name, {})[arch] = f'{registers} | {spills} | {shared} | {warps}'
            if spills:
                bad.append(f'{name} spills {spills} bytes on {arch}')
            if arch == 'sm_90a' and re.search(r'attention_(forward_tiles .*head (64|128)|d\w+_tiles .*head 64) ', name) and warps < (16 if ' bf16 ' in name else 8):
                bad.append(f'{name}: {warps} warps a multiprocessor on {arch}')
    text = [BEGIN, '| kernel |' + ''.join(f' {a}: registers | spilled | shared | warps |' for a in ARCHS), '|---' * (1 + 4 * len(ARCHS)) + '|']
    text += ['| ' + ' | '.join([name] + [row.get(a, ' | | | ') for a in ARCHS]) + ' |' for name, row in sorted(rows.items())] + [END]
    print('\n'.join(text))
    if len(sys.argv) > 1:
        whole = open(sys.argv[1], encoding='utf-8').read()
        before, after = whole.split(BEGIN, 1)[0], whole.split(END, 1)[1]
        open(sys.argv[1], 'w', encoding='utf-8').write(before + '\n'.join(text) + after)
    for line in bad:
        print('FAIL', line)
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main()
