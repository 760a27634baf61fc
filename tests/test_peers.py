#!/usr/bin/env python3
"""What bench/peers.py says of the kernels of numpy's OpenBLAS. The last line is "N passed, N failed"."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'bench'))
import peers

os.environ.pop('OPENBLAS_CORETYPE', None)
try:
    rate, name = peers.numpy_try('')
except peers.Skip as why:
    print(f'skip   test_peers: {why}')
    print('0 passed, 0 failed')
    sys.exit(0)
results = {
    'numpy names the kernels that it takes by itself': rate > 0 and name != '',
    'the same kernels can be asked for by that name': peers.numpy_try(name)[1] == name,
    'a core type that OpenBLAS does not know is not taken for itself': peers.numpy_try('Nonsense') == (0, ''),
}
for what, good in results.items():
    print('ok  ' if good else 'FAIL', what)
print(f'{sum(results.values())} passed, {len(results) - sum(results.values())} failed')
sys.exit(not all(results.values()))
