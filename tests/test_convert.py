#!/usr/bin/env python3
"""Tests of tools/convert_weights.py. The last line is "N passed, N failed".

    python3 tests/test_convert.py            every test
    python3 tests/test_convert.py pickle     those whose name has the word

Needs numpy. Compares with the packages gguf, safetensors, tokenizers, torch, transformers and xllamacpp and with the data of
../shared/data where they are present, and says "skip" where not. TT_EXHAUSTIVE=1 runs the long sweeps too. FUZZ=1 flips every bit instead of one a byte. TT_GGUF_VOCABS names a
folder with llama.cpp's vocabularies, ggml-vocab-*.gguf (in llama-cpp-python's source package: vendor/llama.cpp/models).
"""
import base64
import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
import unittest
import urllib.request
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL = os.path.join(HERE, '..', 'tools', 'convert_weights.py')
DATA = os.path.join(HERE, '..', '..', 'shared', 'data')
GENERATE = os.path.join(HERE, '..', 'build', 'generate')
SFT = os.path.join(HERE, '..', 'build', 'sft')
TOKENIZE = os.path.join(HERE, '..', 'build', 'tokenize')
sys.path.insert(0, os.path.dirname(TOOL))
try:
    import numpy as np
    import convert_weights as cw
except ImportError as e:
    print(f'skip   test_convert: {e}')
    print('0 passed, 0 failed')
    sys.exit(0)


EXHAUSTIVE = os.environ.get('TT_EXHAUSTIVE', '') not in ('', '0')
long_sweep = unittest.skipUnless(EXHAUSTIVE, 'a long sweep, with TT_EXHAUSTIVE=1')


def package(name):
    try:
        return __import__(name)
    except ImportError:
        raise unittest.SkipTest(f'the package {name} is not installed')


def data(*path):
    path = os.path.join(DATA, *path)
    if not os.path.exists(path):
        raise unittest.SkipTest(f'{os.path.relpath(path, DATA)} is not in ../shared/data')
    return path


# ==== models to convert =========================================================================

LLAMA = {'model_type': 'llama', 'vocab_size': 300, 'hidden_size': 8, 'intermediate_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 1,
         'max_position_embeddings': 16, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'tie_word_embeddings': False, 'bos_token_id': 1, 'eos_token_id': 2}
GPT2 = {'model_type': 'gpt2', 'vocab_size': 11, 'n_embd': 6, 'n_layer': 2, 'n_head': 2, 'n_positions': 7, 'bos_token_id': 10, 'eos_token_id': 10}


def shapes(config):
    """Names and shapes of Hugging Face's parameters, written down again and not taken from the tool."""
    c = config
    if c['model_type'] == 'gpt2':
        C = c['n_embd']
        yield from {'transformer.wte.weight': (c['vocab_size'], C), 'transformer.wpe.weight': (c['n_positions'], C)}.items()
        for n in range(c['n_layer']):
            for part, shape in {'ln_1.weight': (C,), 'ln_1.bias': (C,), 'attn.c_attn.weight': (C, 3 * C), 'attn.c_attn.bias': (3 * C,), 'attn.c_proj.weight': (C, C), 'attn.c_proj.bias': (C,),
                                'ln_2.weight': (C,), 'ln_2.bias': (C,), 'mlp.c_fc.weight': (C, 4 * C), 'mlp.c_fc.bias': (4 * C,), 'mlp.c_proj.weight': (4 * C, C), 'mlp.c_proj.bias': (C,)}.items():
                yield f'transformer.h.{n}.{part}', shape
        yield from {'transformer.ln_f.weight': (C,), 'transformer.ln_f.bias': (C,)}.items()
        return
    C, F, H, G, V = (c[k] for k in ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_key_value_heads', 'vocab_size'))
    D = c.get('head_dim', C // H)
    layer = {'input_layernorm.weight': (C,), 'self_attn.q_proj.weight': (H * D, C), 'self_attn.k_proj.weight': (G * D, C), 'self_attn.v_proj.weight': (G * D, C), 'self_attn.o_proj.weight': (C, H * D),
             'post_attention_layernorm.weight': (C,), 'mlp.gate_proj.weight': (F, C), 'mlp.up_proj.weight': (F, C), 'mlp.down_proj.weight': (C, F)}
    if c['model_type'] == 'qwen2' or c.get('attention_bias'):
        layer.update({'self_attn.q_proj.bias': (H * D,), 'self_attn.k_proj.bias': (G * D,), 'self_attn.v_proj.bias': (G * D,)})
    if c.get('attention_bias'):
        layer['self_attn.o_proj.bias'] = (C,)
    if c.get('mlp_bias'):
        layer.update({'mlp.gate_proj.bias': (F,), 'mlp.up_proj.bias': (F,), 'mlp.down_proj.bias': (C,)})
    if c['model_type'] == 'qwen3':
        layer.update({'self_attn.q_norm.weight': (D,), 'self_attn.k_norm.weight': (D,)})
    yield 'model.embed_tokens.weight', (V, C)
    for n in range(c['num_hidden_layers']):
        for part, shape in layer.items():
            yield f'model.layers.{n}.{part}', shape
    yield 'model.norm.weight', (C,)
    if not c.get('tie_word_embeddings'):
        yield 'lm_head.weight', (V, C)


def random_model(config, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype('<f4') for name, shape in shapes(config)}


DTYPES = {'<f8': 'F64', '<f4': 'F32', '<f2': 'F16', '<u2': 'BF16', '|u1': 'U8'}


def safetensors_bytes(tensors):
    header, blob = {}, b''
    for name, a in tensors.items():
        header[name] = {'dtype': DTYPES[a.dtype.str], 'shape': list(a.shape), 'data_offsets': [len(blob), len(blob) + a.nbytes]}
        blob += a.tobytes()
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + blob


def write(path, content):
    with open(path, 'wb' if isinstance(content, bytes) else 'w') as f:
        f.write(content)
    return path


def write_hf(path, config, tensors, name='model.safetensors', **files):
    os.makedirs(path)
    write(os.path.join(path, 'config.json'), json.dumps(config))
    write(os.path.join(path, name), safetensors_bytes(tensors))
    for file, content in files.items():
        write(os.path.join(path, file.replace('__', '.')), content)
    return path


class Name:
    """Pickles as a reference to module.name, whatever that is."""
    def __init__(self, name):
        self.name = name

    def __call__(self):
        raise AssertionError


class Storage:
    def __init__(self, kind, key, numel):
        self.pid = ('storage', Name(f'torch.{kind}Storage'), key, 'cpu', numel)


class Call:
    def __init__(self, name, *args):
        self.reduction = Name(name), args

    def __reduce__(self):
        return self.reduction


class TorchPickler(pickle._Pickler):
    """Writes what torch.save writes, without torch."""
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save_name(self, obj):
        module, _, name = obj.name.rpartition('.')
        self.write(b'c' + module.encode() + b'\n' + name.encode() + b'\n')
        self.memoize(obj)
    dispatch[Name] = save_name


def torch_pickle(obj):
    out = io.BytesIO()
    TorchPickler(out, 2).dump(obj)
    return out.getvalue()


KINDS = {'<f8': 'Double', '<f4': 'Float', '<f2': 'Half', '<u2': 'BFloat16', '|u1': 'Byte'}


def torch_state(tensors, storages):
    """state dict of tensors that are views (offset, shape, stride) of one storage each; storages receives their arrays."""
    out = {}
    for name, a in tensors.items():
        base, offset, shape, stride = a if isinstance(a, tuple) else (a if a.flags.c_contiguous else a.T, 0, a.shape, tuple(s // a.itemsize for s in a.strides))
        key = next((k for k, old in storages.items() if old is base), str(len(storages)))
        storages[key] = base
        out[name] = Call('torch._utils._rebuild_tensor_v2', Storage(KINDS[base.dtype.str], key, base.size), offset, shape, stride, False, Call('collections.OrderedDict'))
    return out


def torch_zip(path, tensors, wrap=lambda state: state):
    storages = {}
    obj = wrap(torch_state(tensors, storages))
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('archive/data.pkl', torch_pickle(obj))
        z.writestr('archive/byteorder', 'little')
        for key, a in storages.items():
            z.writestr(f'archive/data/{key}', a.tobytes())
        z.writestr('archive/version', '3\n')
    return path


def torch_old(path, tensors):
    storages = {}
    obj = torch_state(tensors, storages)
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}, 2), torch_pickle(obj), pickle.dumps(list(storages), 2)]
    return write(path, b''.join(parts) + b''.join(struct.pack('<q', a.size) + a.tobytes() for a in storages.values()))


def llama2c_bytes(config, t, version=0, group=4):
    """llama2.c's export: pairs of rotary rows side by side."""
    c, H, G = config, config['num_attention_heads'], config['num_key_value_heads']
    pair = lambda a, heads: a.reshape(heads, 2, -1, a.shape[1]).transpose(0, 2, 1, 3).reshape(a.shape)
    layers = lambda part, f=lambda a: a: [f(t[f'model.layers.{n}.{part}.weight']) for n in range(c['num_hidden_layers'])]
    norm1, norm2, last, embedding = layers('input_layernorm'), layers('post_attention_layernorm'), [t['model.norm.weight']], [t['model.embed_tokens.weight']]
    attention = layers('self_attn.q_proj', lambda a: pair(a, H)) + layers('self_attn.k_proj', lambda a: pair(a, G)) + layers('self_attn.v_proj') + layers('self_attn.o_proj')
    mlp = layers('mlp.gate_proj') + layers('mlp.down_proj') + layers('mlp.up_proj')
    head = [] if c['tie_word_embeddings'] else [t['lm_head.weight']]
    numbers = [c['hidden_size'], c['intermediate_size'], c['num_hidden_layers'], H, G, c['vocab_size'], c['max_position_embeddings']]
    flat = lambda arrays: b''.join(a.tobytes() for a in arrays)
    if version == 0:
        D = c['hidden_size'] // H
        angles = np.outer(np.arange(c['max_position_embeddings']), 1e4 ** (-np.arange(0, D, 2) / D))
        numbers[5] *= -1 if head else 1
        return struct.pack('<7i', *numbers) + flat(embedding + norm1 + attention + norm2 + mlp + last + [np.cos(angles).astype('<f4'), np.sin(angles).astype('<f4')] + head)
    start = struct.pack('<Ii7iB', 0x616B3432, version, *numbers, not head) + (struct.pack('<i', group) if version == 2 else b'')
    start += bytes(256 - len(start))
    if version == 1:
        return start + flat(norm1 + norm2 + last + embedding + attention + mlp + head)
    quantised = b''
    for a in embedding + attention + mlp + head:
        scale = np.abs(a.reshape(-1, group)).max(1) / 127
        quantised += np.round(a.reshape(-1, group) / scale[:, None]).astype('i1').tobytes() + scale.astype('<f4').tobytes()
    return start + flat(norm1 + norm2 + last) + quantised


def llmc_bytes(config, t, version=3, padded=16):
    c = config
    wte = np.zeros((padded, c['n_embd']), '<f4')
    wte[:c['vocab_size']] = t['transformer.wte.weight']
    parts = ['ln_1.weight', 'ln_1.bias', 'attn.c_attn.weight', 'attn.c_attn.bias', 'attn.c_proj.weight', 'attn.c_proj.bias', 'ln_2.weight', 'ln_2.bias', 'mlp.c_fc.weight', 'mlp.c_fc.bias', 'mlp.c_proj.weight', 'mlp.c_proj.bias']
    arrays = [wte, t['transformer.wpe.weight']] + [t[f'transformer.h.{n}.{part}'].T for part in parts for n in range(c['n_layer'])] + [t['transformer.ln_f.weight'], t['transformer.ln_f.bias']]
    header = [20240326, version, c['n_positions'], c['vocab_size'], c['n_layer'], c['n_head'], c['n_embd'], padded]
    store = (lambda a: a.tobytes()) if version == 3 else (lambda a: to_bf16(np.ascontiguousarray(a)).tobytes())
    return struct.pack('<256i', *header, *[0] * (256 - len(header))) + b''.join(store(a) for a in arrays)


def to_bf16(a):
    """Round to nearest even, by comparing the two neighbours in float64."""
    down = np.ascontiguousarray(a).view('<u4') >> 16
    low, high = ((down << 16).view('<f4').astype('f8'), ((down + 1) << 16).view('<f4').astype('f8'))
    below, above = np.abs(a - low), np.abs(high - a)
    return np.where((above < below) | ((above == below) & (down & 1 == 1)), down + 1, down).astype('<u2')


def from_bf16(a):
    return (a.astype('<u4') << 16).view('<f4')


def gguf_bytes(fields, tensors, blocks=None):
    """A GGUF file; fields are (type, value), tensors arrays, or (block type, shape, bytes)."""
    text = lambda s: struct.pack('<Q', len(s.encode())) + s.encode()
    form = {0: 'B', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 12: 'd'}
    out = struct.pack('<4sIQQ', b'GGUF', 3, len(tensors), len(fields))
    for key, (kind, value) in fields.items():
        out += text(key)
        if isinstance(value, list):
            out += struct.pack('<IIQ', 9, kind, len(value)) + b''.join(text(x) if kind == 8 else struct.pack('<' + form[kind], x) for x in value)
        else:
            out += struct.pack('<I', kind) + (text(value) if kind == 8 else struct.pack('<' + form[kind], value))
    offset, body = 0, b''
    for name, a in tensors.items():
        kind, shape, raw = a if isinstance(a, tuple) else ({'<f4': 0, '<f2': 1, '<u2': 30}[a.dtype.str], a.shape, a.tobytes())
        out += text(name) + struct.pack(f'<I{len(shape)}QIQ', len(shape), *shape[::-1], kind, offset)
        body += raw + bytes(-len(raw) % 32)
        offset = len(body)
    return out + bytes(-len(out) % 32) + body


def gguf_model(config, t, arch='llama'):
    """Fields and tensors as llama.cpp's converter writes them."""
    c = config
    names = {'input_layernorm': 'attn_norm', 'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output', 'post_attention_layernorm': 'ffn_norm',
             'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down', 'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm'}
    tensors = {}
    for name, a in t.items():
        layer = re.match(r'model\.layers\.(\d+)\.(.*)\.(weight|bias)', name)
        if layer:
            n, part, kind = layer.groups()
            heads = c['num_attention_heads'] if part.endswith('q_proj') else c['num_key_value_heads']
            if part in ('self_attn.q_proj', 'self_attn.k_proj') and arch in ('llama', 'smollm3'):
                a = a.reshape(heads, 2, a.shape[0] // heads // 2, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)     # llama.cpp's LlamaModel.permute
            tensors[f'blk.{n}.{names[part]}.{kind}'] = a
        else:
            tensors[{'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight', 'lm_head.weight': 'output.weight'}[name]] = a
    fields = {'general.architecture': (8, arch), 'general.name': (8, 'a test')}
    for key, value in {'block_count': c['num_hidden_layers'], 'context_length': c['max_position_embeddings'], 'embedding_length': c['hidden_size'], 'feed_forward_length': c['intermediate_size'],
                       'attention.head_count': c['num_attention_heads'], 'attention.head_count_kv': c['num_key_value_heads']}.items():
        fields[f'{arch}.{key}'] = (4, value)
    fields.update({f'{arch}.attention.layer_norm_rms_epsilon': (6, c['rms_norm_eps']), f'{arch}.rope.freq_base': (6, c['rope_theta'])})
    if 'head_dim' in c:
        fields.update({f'{arch}.attention.key_length': (4, c['head_dim']), f'{arch}.attention.value_length': (4, c['head_dim'])})
    return fields, tensors


def spm_pieces():
    """A small SentencePiece vocabulary: pieces, scores, GGUF's types."""
    pieces = ['<unk>', '<s>', '</s>'] + [f'<0x{b:02X}>' for b in range(256)] + ['\u2581a', 'in', 'th', '\u2581th', 'ing', '\u2581', 'a', 'i', 'n', 't', 'h', 'g', 'e', '\u2581the']
    pieces += [chr(0x100 + i) for i in range(300 - len(pieces))]
    return pieces, [0.0] * 259 + [-float(i) for i in range(41)], [2, 3, 3] + [6] * 256 + [1] * 41


def tokenizer_bin(pieces, scores):
    texts = [(f'\n{p}\n' if i in (1, 2) else p.replace('\u2581', ' ')).encode() for i, p in enumerate(pieces)]
    return struct.pack('<i', max(map(len, texts))) + b''.join(struct.pack('<fi', s, len(b)) + b for s, b in zip(scores, texts))


def byte_chars():
    """GPT-2's printable names of the 256 bytes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


# ==== forward passes ============================================================================

def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def llama_logits(config, t, ids):
    """Hugging Face's layout, float64, all positions at once."""
    c, T = config, len(ids)
    H, G, D = c['num_attention_heads'], c['num_key_value_heads'], c['hidden_size'] // c['num_attention_heads']
    t = {name: a.astype('f8') for name, a in t.items()}
    norm = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + c['rms_norm_eps']) * w
    angles = np.outer(np.arange(T), c['rope_theta'] ** (-np.arange(0, D, 2) / D))
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    turn = lambda x: x * cos + np.concatenate([-x[..., D // 2:], x[..., :D // 2]], -1) * sin
    x, mask = t['model.embed_tokens.weight'][ids], np.triu(np.full((T, T), -np.inf), 1)
    for n in range(c['num_hidden_layers']):
        w = lambda part: t[f'model.layers.{n}.{part}.weight']
        h = norm(x, w('input_layernorm'))
        q, k = turn((h @ w('self_attn.q_proj').T).reshape(T, H, D)), turn((h @ w('self_attn.k_proj').T).reshape(T, G, D))
        v = (h @ w('self_attn.v_proj').T).reshape(T, G, D)
        k, v = np.repeat(k, H // G, 1), np.repeat(v, H // G, 1)
        p = softmax(np.einsum('ihd,jhd->hij', q, k) / np.sqrt(D) + mask)
        x = x + np.einsum('hij,jhd->ihd', p, v).reshape(T, H * D) @ w('self_attn.o_proj').T
        h = norm(x, w('post_attention_layernorm'))
        gate = h @ w('mlp.gate_proj').T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w('mlp.up_proj').T)) @ w('mlp.down_proj').T
    return norm(x, t['model.norm.weight']) @ t.get('lm_head.weight', t['model.embed_tokens.weight']).T


def gpt2_logits(config, t, ids):
    c, T = config, len(ids)
    C, H = c['n_embd'], c['n_head']
    t = {name: a.astype('f8') for name, a in t.items()}
    norm = lambda x, p: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * t[p + '.weight'] + t[p + '.bias']
    linear = lambda x, p: x @ t[p + '.weight'] + t[p + '.bias']
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))
    x, mask = t['transformer.wte.weight'][ids] + t['transformer.wpe.weight'][:T], np.triu(np.full((T, T), -np.inf), 1)
    for n in range(c['n_layer']):
        p = f'transformer.h.{n}.'
        q, k, v = np.moveaxis(linear(norm(x, p + 'ln_1'), p + 'attn.c_attn').reshape(T, 3, H, C // H), 1, 0)
        attention = softmax(np.einsum('ihd,jhd->hij', q, k) / np.sqrt(C // H) + mask)
        x = x + linear(np.einsum('hij,jhd->ihd', attention, v).reshape(T, C), p + 'attn.c_proj')
        x = x + linear(gelu(linear(norm(x, p + 'ln_2'), p + 'mlp.c_fc')), p + 'mlp.c_proj')
    return norm(x, 'transformer.ln_f') @ t.get('lm_head.weight', t['transformer.wte.weight']).T


# ==== the tests =================================================================================

class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix='convert', dir='/dev/shm' if os.path.isdir('/dev/shm') else None)      # each output is synced
        self.addCleanup(shutil.rmtree, self.dir)
        self.n = 0

    def path(self, name=None):
        self.n += 1
        return os.path.join(self.dir, name or f'out{self.n}')

    def convert(self, *args):
        """Runs the command in this process; returns what it printed. Its error is an AssertionError."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            try:
                cw.main([*map(str, args)])
            except SystemExit as e:
                raise AssertionError(f'convert: {e}') from None
        return out.getvalue()

    def refused(self, words, *args):
        """The command must fail, saying all the words, and leave nothing behind."""
        before = sorted(os.listdir(self.dir))
        with self.assertRaises(AssertionError) as e:
            self.convert(*args)
        text = str(e.exception)
        self.assertTrue(text.startswith('convert: convert_weights.py: '), text)
        for word in words.split('|'):
            self.assertIn(word, text)
        self.assertEqual(sorted(os.listdir(self.dir)), before)

    def load(self, path):
        """All tensors of a directory as written; bf16 as its bits."""
        names = json.load(open(os.path.join(path, 'model.safetensors.index.json')))['weight_map'].values() if not os.path.exists(os.path.join(path, 'model.safetensors')) else ['model.safetensors']
        out = {}
        for name in sorted(set(names)):
            blob = open(os.path.join(path, name), 'rb').read()
            n, = struct.unpack('<Q', blob[:8])
            for key, e in json.loads(blob[8:8 + n]).items():
                if key != '__metadata__':
                    a, b = e['data_offsets']
                    out[key] = np.frombuffer(blob[8 + n + a:8 + n + b], {v: k for k, v in DTYPES.items()}[e['dtype']]).reshape(e['shape'])
        return out

    def config(self, path):
        return json.load(open(os.path.join(path, 'config.json')))

    def same(self, found, expected, cast=lambda a: a):
        self.assertEqual(sorted(found), sorted(expected))
        for name, a in expected.items():
            a = cast(a)
            self.assertEqual((found[name].dtype, found[name].shape), (a.dtype, a.shape), name)
            self.assertEqual(found[name].tobytes(), a.tobytes(), name)


class Llama2c(Case):
    def test_stories_continue_as_published(self):
        ids = json.load(open(data('models', 'stories260K', 'greedy_ids.json')))['greedy_ids']
        out = self.path()
        text = self.convert(data('models', 'stories260K', 'stories260K.bin'), out, '--tokenizer', data('models', 'stories260K', 'tok512.bin'), '--verify')
        self.assertIn('layers.*.attention.wq.weight -> model.layers.*.self_attn.q_proj.weight [64, 64] F32, rows un-permuted x5', text)
        self.assertIn('verified: 47 tensors', text)
        logits = llama_logits(self.config(out), self.load(out), [1] + ids[:-1])
        self.assertEqual(logits.argmax(-1).tolist(), ids)

    def test_stories_continue_in_c(self):
        if not os.path.exists(GENERATE):
            raise unittest.SkipTest('build/generate is not built (make examples)')
        ids = json.load(open(data('models', 'stories260K', 'greedy_ids.json')))['greedy_ids']
        out = self.path()
        self.convert(data('models', 'stories260K', 'stories260K.bin'), out, '--tokenizer', data('models', 'stories260K', 'tok512.bin'))
        run = lambda *args: subprocess.run([GENERATE, '--model', out, '--prompt', '', '--greedy', '--max-tokens', '256', *args], capture_output=True, text=True)
        ran = run('--ids')
        if 'tt_tokenizer_parse' in ran.stderr:       # a library without SentencePiece: the weights all the same
            print(f'skip   tokenizer of stories260K in C: {ran.stderr.strip()}')
            standin = {'added_tokens': [], 'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False}, 'decoder': {'type': 'ByteLevel'}, 'model': {'type': 'BPE', 'vocab': {c: b for b, c in byte_chars().items()}, 'merges': []}}
            write(os.path.join(out, 'tokenizer.json'), json.dumps(standin))
            ran = run('--ids')
        else:
            published = open(data('models', 'stories260K', 'stories260K.md')).read()
            self.assertIn(run().stdout.strip()[:400], published)
        self.assertEqual(ran.stderr, '')
        self.assertEqual([int(x) for x in ran.stdout.split()], ids)

    def test_stories_learn_more_in_c(self):
        for program in (GENERATE, SFT):
            if not os.path.exists(program):
                raise unittest.SkipTest(f'{program} is not built (make examples)')
        model, trained, lines = self.path(), self.path(), self.path('more.jsonl')
        self.convert(data('models', 'stories260K', 'stories260K.bin'), model, '--tokenizer', data('models', 'stories260K', 'tok512.bin'))
        where = {'park': 'ball', 'shop': 'ball', 'zoo': 'bird', 'lake': 'bird'}
        rows = [(f'{name} went to the {place}.', f' {name} saw a red {thing} there.') for name in ('Lily', 'Tom', 'Anna', 'Ben', 'Mia', 'Max', 'Sue', 'Tim') for place, thing in where.items()]
        write(lines, ''.join(json.dumps({'prompt': p, 'completion': c}) + '\n' for p, c in rows))
        ran = subprocess.run([SFT, '--model', model, '--data', lines, '--out', trained, '--epochs', '8', '--lr', '1e-3', '--batch-tokens', '256'], capture_output=True, text=True)
        self.assertEqual((ran.returncode, ran.stderr), (0, ''))
        losses = [float(line.split('validation loss ')[1]) for line in ran.stdout.splitlines() if 'validation loss' in line]
        self.assertEqual(len(losses), 8)
        self.assertLess(losses[-1], min(0.05, losses[0] / 4), ran.stdout)
        say = lambda path, p: subprocess.run([GENERATE, '--model', path, '--prompt', p, '--greedy', '--max-tokens', '32'], capture_output=True, text=True).stdout
        for p, c in rows[::5]:
            self.assertEqual(say(trained, p), p + c + '\n')
            self.assertNotEqual(say(model, p), p + c + '\n')

    def test_a_template_that_changes_earlier_turns(self):
        """Qwen 3 drops the thoughts of earlier answers, so that each answer is an example of its own."""
        if not os.path.exists(SFT):
            raise unittest.SkipTest(f'{SFT} is not built (make examples)')
        model, lines = self.path(), self.path('talk.jsonl')
        self.convert(data('models', 'stories260K', 'stories260K.bin'), model, '--tokenizer', data('models', 'stories260K', 'tok512.bin'))
        talk = [('user', 'Hi'), ('assistant', '<think>\na\n</think>\n\nHello.'), ('user', 'Who?'), ('assistant', 'Me.')]
        write(lines, json.dumps({'messages': [{'role': r, 'content': c} for r, c in talk]}) + '\n')
        for name, n in (('chatml', 1), ('smollm2', 1), ('qwen3', 2)):
            ran = subprocess.run([SFT, '--model', model, '--data', lines, '--out', self.path(), '--format', name, '--epochs', '1'], capture_output=True, text=True)
            self.assertIn(f': {n} examples, 0 held out, 0 left out', ran.stdout, ran.stderr)
        write(os.path.join(model, 'chat_template.jinja'), '{{ messages }}')
        ran = subprocess.run([SFT, '--model', model, '--data', lines, '--out', self.path(), '--epochs', '1'], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 1)
        self.assertIn('chat template {{messages}}... is not known here, choose the format by name', ran.stderr)

    def test_every_version(self):
        for tied in (True, False):
            config = {**LLAMA, 'tie_word_embeddings': tied}
            t = random_model(config)
            for version in (0, 1, 2):
                path, out = write(self.path(), llama2c_bytes(config, t, version)), self.path()
                self.convert(path, out, '--verify')
                found = self.load(out)
                if version < 2:
                    self.same(found, t)
                for name in t:
                    self.assertLess(np.abs(found[name] - t[name]).max(), 0.02, name)
                self.assertEqual({**self.config(out), **config, 'eos_token_id': [1, 2]}, self.config(out))

    def test_writes_what_it_reads(self):
        path, hf, back = data('models', 'stories260K', 'stories260K.bin'), self.path(), self.path('back.bin')
        self.convert(path, hf, '--tokenizer', data('models', 'stories260K', 'tok512.bin'))
        text = self.convert(hf, back, '--to', 'llama2c', '--verify')
        self.assertIn('back.tokenizer.bin', text)
        old, new = open(path, 'rb').read(), open(back, 'rb').read()
        tables = 2 * 512 * 4 * 4                     # the last thing in the file: cos and sin, recomputed
        self.assertEqual(old[:-tables], new[:-tables])
        self.assertLess(np.abs(np.frombuffer(old[-tables:], '<f4') - np.frombuffer(new[-tables:], '<f4')).max(), 1e-4)
        again = self.path()
        self.convert(back, again, '--tokenizer', back[:-4] + '.tokenizer.bin')
        self.assertEqual(open(os.path.join(hf, 'tokenizer.json')).read(), open(os.path.join(again, 'tokenizer.json')).read())

    def test_refuses_what_it_has_no_room_for(self):
        for change, word in (({'rope_theta': 5e5}, 'rope_theta 500000'), ({'rms_norm_eps': 1e-6}, 'rms_norm_eps'), ({'attention_bias': True}, 'biases'), ({'head_dim': 6}, 'heads'),
                             ({'model_type': 'qwen3', 'head_dim': 2}, 'qwen3'), ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8, 'low_freq_factor': 1, 'high_freq_factor': 4, 'original_max_position_embeddings': 8192}}, 'scaling')):
            config = {**LLAMA, **change}
            self.refused(f'has no room for|{word}', write_hf(self.path(), config, random_model(config)), self.path(), '--to', 'llama2c')
        self.refused('has no room for|--dtype F16', write_hf(self.path(), LLAMA, random_model(LLAMA)), self.path(), '--to', 'llama2c', '--dtype', 'f16')

    def test_says_what_is_wrong(self):
        blob = llama2c_bytes(LLAMA, random_model(LLAMA))
        v2 = bytearray(llama2c_bytes(LLAMA, random_model(LLAMA), 2))
        self.refused('a llama2.c v0 model of|the file has', write(self.path(), blob + b'x'), self.path())
        self.refused('version 3', write(self.path(), struct.pack('<Ii', 0x616B3432, 3) + blob), self.path())
        self.refused('no llama2.c file: hidden_size is -1', write(self.path(), struct.pack('<i', -1) + blob[4:]), self.path())
        struct.pack_into('<i', v2, 37, 7)
        self.refused('group size is 7', write(self.path(), bytes(v2)), self.path())
        self.refused('299 pieces, the model has 300', write(self.path(), blob), self.path(), '--tokenizer', write(self.path(), tokenizer_bin(*[x[:299] for x in spm_pieces()[:2]])))


class Programs(Case):
    """What generate and sft read: where a sequence begins, and whose special tokens count."""

    def model(self, bos=True, pad=0):
        for program in (GENERATE, SFT):
            if not os.path.exists(program):
                raise unittest.SkipTest(f'{program} is not built (make examples)')
        names = ['<|begin_of_text|>', '<|im_start|>', '<|im_end|>']
        piece = {'SpecialToken': {'id': names[0], 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}
        tokenizer = {'added_tokens': [{'id': 256 + i, 'content': name, 'special': True} for i, name in enumerate(names)],
                     'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False}, 'decoder': {'type': 'ByteLevel'},
                     'post_processor': {'type': 'TemplateProcessing', 'single': piece, 'pair': [], 'special_tokens': {names[0]: {'id': names[0], 'ids': [256], 'tokens': [names[0]]}}} if bos else None,
                     'model': {'type': 'BPE', 'vocab': {c: b for b, c in byte_chars().items()}, 'merges': []}}
        config = {**LLAMA, 'vocab_size': 259 + pad, 'max_position_embeddings': 100000, 'bos_token_id': 256, 'eos_token_id': 258}
        tensors = random_model(config)
        tensors['lm_head.weight'][259:] *= 8         # rows without a token, and loud
        out = self.path()
        write_hf(out, config, tensors)
        write(os.path.join(out, 'tokenizer.json'), json.dumps(tokenizer))
        return out

    def generate(self, model, *options, lines=None):
        ran = subprocess.run([GENERATE, '--model', model, '--greedy', '--max-tokens', '3', *options], input=lines, capture_output=True, text=True)
        self.assertEqual((ran.returncode, ran.stderr), (0, ''))
        return ran.stdout

    def test_a_prompt_begins_as_the_tokenizers_file_says(self):
        model, without = self.model(), self.model(bos=False)
        ids = self.generate(model, '--prompt', 'the cat', '--ids')
        self.assertEqual(ids, self.generate(without, '--prompt', '<|begin_of_text|>the cat', '--ids'))
        self.assertEqual(ids, self.generate(model, '--prompt', '<|begin_of_text|>the cat', '--ids'))
        self.assertNotEqual(ids, self.generate(without, '--prompt', 'the cat', '--ids'))
        turn = '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
        chat = self.generate(model, '--chat', '--format', 'chatml', '--ids', lines='hi\n')
        self.assertEqual(chat, f"> {self.generate(without, '--prompt', turn, '--ids')}> \n")
        self.assertEqual(chat, f"> {self.generate(model, '--prompt', turn, '--ids')}> \n")

    def test_what_is_said_in_a_chat_is_text(self):
        model = self.model()
        chat = lambda *options: self.generate(model, '--chat', '--format', 'chatml', '--ids', *options, lines='hi<|im_end|>\n')
        turn = '<|im_start|>user\nhi<|im_end|><|im_end|>\n<|im_start|>assistant\n'
        self.assertEqual(chat('--parse-content'), f"> {self.generate(model, '--prompt', turn, '--ids')}> \n")
        self.assertNotEqual(chat(), chat('--parse-content'))
        talk, out = self.path('talk.jsonl'), self.path()
        write(talk, json.dumps({'messages': [{'role': 'user', 'content': 'hi<|im_end|>'}, {'role': 'assistant', 'content': 'the<|im_end|>cat'}]}) + '\n')
        learn = lambda *options: subprocess.run([SFT, '--model', model, '--data', talk, '--out', out, '--format', 'chatml', '--epochs', '1', *options], capture_output=True, text=True).stdout
        self.assertIn('1 examples', learn())
        self.assertNotEqual(learn(), learn('--parse-content'))

    @long_sweep
    def test_a_long_line_is_one_turn(self):
        said = self.generate(self.model(), '--chat', '--format', 'plain', '--ids', '--max-tokens', '1', lines='a' * 70000 + '\r\nb\n')
        self.assertEqual(said.count('>'), 3, said[:200])      # two turns, and the end
        ran = subprocess.run([GENERATE, '--model', self.model(), '--chat', '--format', 'plain'], input='a\0b\n', capture_output=True, text=True)
        self.assertEqual((ran.returncode, ran.stderr), (1, 'generate: --chat: a line has a byte 0 behind 1 bytes\n'))

    def test_rows_without_a_token_are_printed(self):
        said = self.generate(self.model(pad=200), '--prompt', 'the cat', '--max-tokens', '40')
        self.assertIn('\ufffd', said)


class Tokenizers(Case):
    def encode_like_run_c(self, pieces, scores, text):
        """llama2.c: a space in front, characters, then the best-scored neighbours until none fit."""
        index, ids = {p: i for i, p in enumerate(pieces)}, []
        for c in '\u2581' + text.replace(' ', '\u2581'):
            ids += [index[c]] if c in index else [3 + b for b in c.encode()]
        while True:
            best = max(((scores[index[pieces[a] + pieces[b]]], -i) for i, (a, b) in enumerate(zip(ids, ids[1:])) if pieces[a] + pieces[b] in index), default=None)
            if best is None:
                return [1] + ids
            i = -best[1]
            ids[i:i + 2] = [index[pieces[ids[i]] + pieces[ids[i + 1]]]]

    def test_llama2c_encodes_like_run_c(self):
        tokenizers = package('tokenizers')
        root = cw.read_llama2c_tokenizer(data('models', 'stories260K', 'tok512.bin'), 512)
        blob, at, pieces, scores = open(data('models', 'stories260K', 'tok512.bin'), 'rb').read(), 4, [], []
        while at < len(blob):
            score, n = struct.unpack_from('<fi', blob, at)
            pieces.append(blob[at + 8:at + 8 + n].decode().replace(' ', '\u2581'))
            scores.append(score)
            at += 8 + n
        t = tokenizers.Tokenizer.from_str(json.dumps(root))
        for text in ('Once upon a time, there was a little girl named Lily.', 'a  b', 'x', '\u00e9\u4e2d \U0001f600 tab\tnew\nline', open(data('models', 'stories260K', 'stories260K.md')).read()[:1500]):
            ids = t.encode(text).ids
            self.assertEqual(ids, self.encode_like_run_c(pieces, scores, text))
            self.assertEqual(t.decode(ids), text)

    def test_llama2_is_the_published_tokenizer(self):
        published = json.load(open(data('tokenizers', 'llama2', 'tokenizer.json')))
        for source in (data('tokenizers', 'llama2', 'tokenizer.bin'), data('models', 'gguf', 'ggml-vocab-llama-spm.gguf')):
            root, files = cw.open_tokenizer(source, 32000)
            for part in ('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'):
                self.assertEqual(root[part], published[part], part)
            self.assertEqual({k: v for k, v in root['model'].items() if k != 'ignore_merges'}, {k: v for k, v in published['model'].items() if k != 'ignore_merges'})
            self.assertEqual([(t['id'], t['content'], t['special']) for t in root['added_tokens']], [(0, '<unk>', True), (1, '<s>', True), (2, '</s>', True)])
            self.assertEqual(json.loads(files['tokenizer_config.json'])['bos_token'], '<s>')

    def test_llama2_gives_the_expected_ids(self):
        tokenizers = package('tokenizers')
        t = tokenizers.Tokenizer.from_str(json.dumps(cw.open_tokenizer(data('models', 'gguf', 'ggml-vocab-llama-spm.gguf'), 32000)[0]))
        judge = tokenizers.Tokenizer.from_file(data('tokenizers', 'llama2', 'tokenizer.json'))
        texts = open(data('vectors', 'llamacpp', 'ggml-vocab-gpt-2.gguf.inp'), encoding='utf-8', newline='').read().split('\n__ggml_vocab_test__\n')
        for text in texts:
            self.assertEqual(t.encode(text).ids, judge.encode(text).ids, text)

    def test_gpt2_gives_the_expected_ids(self):
        tokenizers = package('tokenizers')
        t = tokenizers.Tokenizer.from_str(json.dumps(cw.open_tokenizer(data('models', 'gguf', 'ggml-vocab-gpt-2.gguf'), 50257)[0]))
        texts = open(data('vectors', 'llamacpp', 'ggml-vocab-gpt-2.gguf.inp'), encoding='utf-8', newline='').read().split('\n__ggml_vocab_test__\n')
        lines = open(data('vectors', 'llamacpp', 'ggml-vocab-gpt-2.gguf.out')).read().split('\n')
        for text, line in list(zip(texts, lines))[:46]:
            self.assertEqual(t.encode(text).ids, [int(x) for x in line.split()], text)

    KINDS = (('qwen2.5', 'qwen2', 151936), ('llama3', 'llama-bpe', 128256))      # folder, GGUF's name, size

    def difficult_texts(self):
        texts = open(data('vectors', 'llamacpp', 'ggml-vocab-gpt-2.gguf.inp'), encoding='utf-8', newline='').read().split('\n__ggml_vocab_test__\n')
        return texts[:46] + ["It'LL cost 12345678 x\u0301 \u212b e\u0301\u0323 don'T", 'a\r\n\n  b \t\u3000c', 'ünïcödé 한국어 \u1112\u1161\u11ab 🙂🙂']

    @long_sweep
    def test_vocabularies_as_llamacpp_writes_them(self):
        """The steps of llama.cpp's own converter with its library: GGUFWriter, SpecialVocab, padding up to the model's size."""
        gguf, tokenizers = package('gguf'), package('tokenizers')
        for name, pre, n in self.KINDS:
            folder = os.path.dirname(data('tokenizers', name, 'tokenizer.json'))
            published = json.load(open(os.path.join(folder, 'tokenizer.json')))
            pieces, types = [f'[PAD{i}]' for i in range(n)], [gguf.TokenType.UNUSED] * n
            for piece, i in published['model']['vocab'].items():
                pieces[i], types[i] = piece, gguf.TokenType.NORMAL
            for token in published['added_tokens']:
                pieces[token['id']], types[token['id']] = token['content'], gguf.TokenType.CONTROL if token['special'] else gguf.TokenType.USER_DEFINED
            path = self.path(f'{name}.gguf')
            writer = gguf.GGUFWriter(path, 'llama')
            writer.add_tokenizer_model('gpt2')
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(pieces)
            writer.add_token_types(types)
            gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            root, files = cw.open_tokenizer(path, n)
            mine, judge = tokenizers.Tokenizer.from_str(json.dumps(root)), tokenizers.Tokenizer.from_str(json.dumps(published))
            for text in self.difficult_texts() + [''.join(token['content'] + ' x' for token in published['added_tokens'][:20])]:
                self.assertEqual(mine.encode(text).ids, judge.encode(text).ids, (name, text))
            settings, expected = json.loads(files['tokenizer_config.json']), json.load(open(os.path.join(folder, 'tokenizer_config.json')))
            self.assertEqual(settings['chat_template'], expected['chat_template'])
            self.assertEqual(settings['eos_token'], expected['eos_token'])

    @long_sweep
    def test_ranks_are_the_published_tokenizers(self):
        """tiktoken's ranks as merges: GPT-2's of r50k, and for Llama 3, whose file has every way to make a token, the same ids."""
        for source, name in ((('tiktoken', 'r50k_base.tiktoken'), 'gpt2'), (('llama3', 'tokenizer.model'), 'llama3')):
            ranks, published = data('tokenizers', *source), json.load(open(data('tokenizers', name, 'tokenizer.json')))
            out = self.path()
            self.assertIn('tiktoken', self.convert(ranks, out))
            made, judge = json.load(open(os.path.join(out, 'tokenizer.json')))['model'], published['model']
            special = {token['content'] for token in published['added_tokens']}
            self.assertEqual(made['vocab'], {piece: i for piece, i in judge['vocab'].items() if piece not in special}, name)
            pairs = [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in judge['merges']]
            merges = [tuple(m) for m in made['merges']]
            self.assertTrue(merges == pairs if name == 'gpt2' else set(merges) <= set(pairs), name)
            if not os.path.exists(TOKENIZE):
                continue
            text = open(data('vectors', 'minbpe', 'taylorswift.txt'), 'rb').read()
            ids = [subprocess.run([TOKENIZE, 'encode', '--tokenizer', folder], input=text, capture_output=True, check=True).stdout
                   for folder in (out, os.path.dirname(data('tokenizers', name, 'tokenizer.json')))]
            self.assertEqual(ids[0], ids[1], name)

    def test_ranks_that_are_wrong_are_named(self):
        for words, text in (('has 1 ranks, expected 50256 (r50k)', b'IQ== 0\n'), ('line 2 is not "base64 rank"', b'IQ== 0\nIg==\n'),
                            ('line 2 has a token or rank', b'IQ== 0\nIQ== 1\n'), ('line 2 has a token or rank', b'IQ== 0\nIg== 0\n'),
                            ('line 2 is not "base64 rank"', b'IQ== 0\nIg== 99999999\n'), ('line 2 is not "base64 rank"', b'IQ== 0\nI=== 1\n')):
            self.refused(words, write(self.path(), text), self.path())
        many = b''.join(base64.b64encode(struct.pack('>H', i)) + b' %d\n' % i for i in range(50256))
        self.refused('byte 0x00 has no rank', write(self.path(), many), self.path())

    def test_a_token_splits_where_its_last_merge_was(self):
        ranks = {b'a': 0, b'b': 1, b'c': 2, b'bc': 3, b'ab': 4, b'abc': 5, b'abb': 6}
        self.assertEqual(cw.split_by_ranks(b'abc', ranks), [b'a', b'bc'])
        self.assertEqual(cw.split_by_ranks(b'abb', ranks), [b'ab', b'b'])
        self.assertIsNone(cw.split_by_ranks(b'cccc', ranks))

    def test_published_gguf_vocabularies(self):
        """llama.cpp's own vocabularies with the ids it expects: the folder vendor/llama.cpp/models of llama-cpp-python's source package."""
        gguf, tokenizers = package('gguf'), package('tokenizers')
        folder = os.environ.get('TT_GGUF_VOCABS')
        if not folder:
            self.skipTest('TT_GGUF_VOCABS names no folder with ggml-vocab-*.gguf')
        for name in ('gpt-2', 'llama-spm', 'llama-bpe', 'phi-3', 'qwen2'):
            path = os.path.join(folder, f'ggml-vocab-{name}.gguf')
            n = len(gguf.GGUFReader(path).fields['tokenizer.ggml.tokens'].data)
            root = json.dumps(cw.open_tokenizer(path, n)[0])
            judge = tokenizers.Tokenizer.from_str(root)
            texts = open(path + '.inp', encoding='utf-8', newline='').read().split('\n__ggml_vocab_test__\n')
            expected = [[int(x) for x in line.split()] for line in open(path + '.out').read().split('\n')]
            self.assertEqual(len(texts), 47)
            self.assertEqual([judge.encode(text, add_special_tokens=False).ids for text in texts], expected, name)
            ours = subprocess.run([TOKENIZE, 'encode', '--tokenizer', write(self.path('tokenizer.json'), root.encode()), '--no-bos', '-0'],
                                  input=''.join(text + '\0' for text in texts).encode(), capture_output=True, check=True).stdout.decode()
            self.assertEqual([[int(x) for x in line.split()] for line in ours.split('\n')[:-1]], expected, name)
        for name in ('aquila', 'bert-bge', 'command-r', 'deepseek-coder', 'falcon', 'gemma-4', 'gpt-neox', 'mpt', 'starcoder'):
            with self.assertRaisesRegex(cw.Refused, "tokenizer.ggml.(pre|model) is .*, expected", msg=name):
                cw.open_tokenizer(os.path.join(folder, f'ggml-vocab-{name}.gguf'), 1)

    def test_llamacpp_gives_the_ids(self):
        """llama.cpp reads the vocabularies that are written here, and encodes with them. It has no NFC: it is given composed text."""
        xllamacpp, tokenizers = package('xllamacpp'), package('tokenizers')
        for name, pre, n in self.KINDS:
            published = open(data('tokenizers', name, 'tokenizer.json'), encoding='utf-8').read()
            config = {**LLAMA, 'vocab_size': n, 'tie_word_embeddings': True, 'bos_token_id': None, 'eos_token_id': n - 300}
            source = write_hf(self.path(), config, random_model(config), tokenizer__json=published)
            path = self.path(f'{name}.gguf')
            self.convert(source, path, '--to', 'gguf')
            params = xllamacpp.CommonParams()
            params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = path, 64, 1, False, -1
            server, judge = xllamacpp.Server(params), tokenizers.Tokenizer.from_str(published)
            address = server.listening_address
            for text in self.difficult_texts():
                text = unicodedata.normalize('NFC', text)
                request = urllib.request.Request(f'{address}/tokenize', json.dumps({'content': text, 'parse_special': True}).encode(), {'Content-Type': 'application/json'})
                ids = json.load(urllib.request.urlopen(request))['tokens']
                self.assertEqual(ids, judge.encode(text, add_special_tokens=False).ids, (name, text))
            del server

    @long_sweep
    def test_published_tokenizers_survive_gguf(self):
        for name, vocab, bos in (('gpt2', 50257, False), ('smollm2', 49280, False), ('llama2', 32000, True), ('llama3', 128256, True), ('qwen2.5', 151936, False)):
            root = json.load(open(data('tokenizers', name, 'tokenizer.json')))
            ckpt = cw.Checkpoint('', {'bos_token_id': 1, 'eos_token_id': 2}, {}, 'hf', False, False, root, {}, '', '')
            meta = cw.gguf_vocabulary(ckpt, vocab, name)
            back, _ = cw.gguf_tokenizer(meta, name)
            merges = lambda r: [m if isinstance(m, str) else ' '.join(m) for m in r['model']['merges']]
            ids = lambda r: {**r['model']['vocab'], **{t['content']: t['id'] for t in r['added_tokens']}}
            self.assertEqual(merges(back), merges(root), name)
            self.assertEqual(ids(back), ids(root), name)
            self.assertEqual(back['normalizer'], root['normalizer'])
            self.assertEqual(meta['tokenizer.ggml.add_bos_token'], bos, name)
            self.assertEqual(back['model']['ignore_merges'], root['model'].get('ignore_merges', False))

    def test_metaspace_becomes_the_prefix_of_gguf(self):
        root = json.load(open(data('tokenizers', 'llama2', 'tokenizer.json')))
        for scheme, prefix in (('always', True), ('first', True), ('never', False)):
            root.update(normalizer=None, pre_tokenizer={'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': scheme, 'split': False})
            meta = cw.gguf_vocabulary(cw.Checkpoint('', {'bos_token_id': 1, 'eos_token_id': 2}, {}, 'hf', False, False, root, {}, '', ''), 32000, scheme)
            self.assertEqual(meta['tokenizer.ggml.add_space_prefix'], prefix, scheme)

    def test_chat_template_and_special_tokens_from_gguf(self):
        pieces, scores, types = spm_pieces()
        fields, tensors = gguf_model(LLAMA, random_model(LLAMA))
        types[290] = 4
        for key, entry in {'model': (8, 'llama'), 'tokens': (8, pieces), 'scores': (6, scores), 'token_type': (5, types), 'bos_token_id': (4, 1), 'eos_token_id': (4, 2), 'eot_token_id': (4, 7), 'unknown_token_id': (4, 0), 'add_space_prefix': (7, False)}.items():
            fields['tokenizer.ggml.' + key] = entry
        fields['tokenizer.chat_template'] = (8, "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}")
        path, out, back, again = write(self.path(), gguf_bytes(fields, tensors)), self.path(), self.path(), self.path()
        self.convert(path, out, '--verify')
        settings = json.load(open(os.path.join(out, 'tokenizer_config.json')))
        self.assertEqual((settings['chat_template'], settings['bos_token'], settings['eos_token'], settings['unk_token'], settings['add_bos_token']), (fields['tokenizer.chat_template'][1], '<s>', '</s>', '<unk>', True))
        self.assertEqual(json.load(open(os.path.join(out, 'generation_config.json'))), {'bos_token_id': 1, 'eos_token_id': [2, 7]})
        root = json.load(open(os.path.join(out, 'tokenizer.json')))
        self.assertEqual((root['normalizer'], root['pre_tokenizer']), (None, {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': 'never', 'split': False}))
        self.assertEqual([d['type'] for d in root['decoder']['decoders']], ['Replace', 'ByteFallback', 'Fuse'])
        self.assertEqual([(t['id'], t['special']) for t in root['added_tokens']], [(0, True), (1, True), (2, True), (290, False)])
        self.convert(out, back, '--to', 'gguf', '--verify')
        self.convert(back, again)
        for name in ('tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'model.safetensors'):
            self.assertEqual(open(os.path.join(out, name), 'rb').read(), open(os.path.join(again, name), 'rb').read(), name)

    def test_says_what_is_wrong(self):
        pieces, scores, types = spm_pieces()
        model = write_hf(self.path(), LLAMA, random_model(LLAMA))
        base = {'model': (8, 'llama'), 'tokens': (8, pieces), 'scores': (6, scores), 'token_type': (5, types), 'bos_token_id': (4, 1)}
        for change, word in (({'tokens': (8, pieces[:299] + ['in'])}, 'in'), ({'scores': (6, scores[:5])}, '5 scores for 300'), ({'token_type': (5, types[:7])}, '7 types'), ({'bos_token_id': (4, 300)}, 'bos is 300'),
                             ({'model': (8, 'bert')}, 'bert'), ({'model': (8, 'gpt2'), 'merges': (8, ['a b']), 'pre': (8, 'tekken')}, "pre is 'tekken'|--tokenizer"), ({'model': (8, 'gpt2'), 'merges': (8, ['ab']), 'pre': (8, 'gpt-2')}, 'no list of pairs')):
            fields = {'tokenizer.ggml.' + key: entry for key, entry in {**base, **change}.items()}
            self.refused(word, model, self.path(), '--tokenizer', write(self.path(), gguf_bytes(fields, {})))
        self.refused('no JSON', model, self.path(), '--tokenizer', write(self.path(), b'{"model": '))
        self.refused("type is 'Unigram', expected BPE", model, self.path(), '--tokenizer', write(self.path(), b'{"model": {"type": "Unigram"}}'))
        self.refused('no id below the vocabulary size 300', model, self.path(), '--tokenizer', write(self.path(), b'{"model": {"type": "BPE", "vocab": {"a": 300}, "merges": []}}'))
        self.refused('no UTF-8', model, self.path(), '--tokenizer', write(self.path(), tokenizer_bin(pieces, scores)[:-2] + b'\xff\xff'))


class Torch(Case):
    def test_zip_and_legacy(self):
        t = random_model(LLAMA)
        for name, maker in (('a.bin', torch_zip), ('b.bin', torch_old)):
            path, out = os.path.join(self.path(), 'pytorch_model.bin'), self.path()
            os.makedirs(os.path.dirname(path))
            maker(path, {**t, 'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(1, '<f4')})
            write(os.path.join(os.path.dirname(path), 'config.json'), json.dumps(LLAMA))
            self.assertIn('ignored: model.layers.0.self_attn.rotary_emb.inv_freq', self.convert(os.path.dirname(path), out, '--verify'))
            self.same(self.load(out), t)

    def test_views_types_and_shards(self):
        t = random_model(LLAMA)
        big = np.arange(2000, dtype='<f4')
        views = dict(t)
        views['model.norm.weight'] = (big, 100, (8,), (3,))
        views['lm_head.weight'] = np.asfortranarray(t['lm_head.weight'])
        views['model.embed_tokens.weight'] = t['model.embed_tokens.weight'].astype('<f2')
        views['model.layers.0.mlp.up_proj.weight'] = to_bf16(t['model.layers.0.mlp.up_proj.weight'])
        views['model.layers.1.mlp.up_proj.weight'] = t['model.layers.1.mlp.up_proj.weight'].astype('<f8') * 3
        path, out = self.path(), self.path()
        os.makedirs(path)
        names = sorted(views)
        halves = [names[::2], names[1::2]]
        for i, half in enumerate(halves):
            torch_zip(os.path.join(path, f'pytorch_model-{i}.bin'), {name: views[name] for name in half})
        write(os.path.join(path, 'pytorch_model.bin.index.json'), json.dumps({'weight_map': {name: f'pytorch_model-{i}.bin' for i, half in enumerate(halves) for name in half}}))
        write(os.path.join(path, 'config.json'), json.dumps(LLAMA))
        self.convert(path, out, '--verify')
        expected = {**t, 'model.norm.weight': big[100:124:3], 'model.embed_tokens.weight': views['model.embed_tokens.weight'], 'model.layers.0.mlp.up_proj.weight': views['model.layers.0.mlp.up_proj.weight'],
                    'model.layers.1.mlp.up_proj.weight': views['model.layers.1.mlp.up_proj.weight'].astype('<f4')}
        self.same(self.load(out), expected)

    def test_training_checkpoints(self):
        config = {**LLAMA, 'tie_word_embeddings': True}
        t = random_model(config)
        names = {'input_layernorm': 'attention_norm', 'self_attn.q_proj': 'attention.wq', 'self_attn.k_proj': 'attention.wk', 'self_attn.v_proj': 'attention.wv', 'self_attn.o_proj': 'attention.wo', 'post_attention_layernorm': 'ffn_norm',
                 'mlp.gate_proj': 'feed_forward.w1', 'mlp.up_proj': 'feed_forward.w3', 'mlp.down_proj': 'feed_forward.w2', 'model.embed_tokens': 'tok_embeddings', 'model.norm': 'norm'}
        state = {}
        for name, a in t.items():
            foreign = name[len('model.'):-len('.weight')] if '.layers.' in name else name[:-len('.weight')]
            for ours, theirs in names.items():
                foreign = foreign.replace(ours, theirs) if foreign.endswith(ours) else foreign
            if 'wq' in foreign or 'wk' in foreign:
                a = a.reshape(2 if 'wq' in foreign else 1, 2, 2, 8).transpose(0, 2, 1, 3).reshape(a.shape)
            state['_orig_mod.' + foreign + '.weight'] = a
        state['_orig_mod.output.weight'] = state['_orig_mod.tok_embeddings.weight']
        args = {'dim': 8, 'n_layers': 2, 'n_heads': 2, 'n_kv_heads': 1, 'vocab_size': 300, 'max_seq_len': 16, 'multiple_of': 4, 'dropout': 0.0}
        path, out = torch_zip(self.path('ckpt.pt'), state, lambda state: {'model': state, 'model_args': args, 'iter_num': 5, 'best_val_loss': 1.5, 'optimizer': {'state': {}, 'param_groups': [1, 2]}}), self.path()
        self.convert(path, out, '--verify')
        self.same(self.load(out), t)
        self.assertTrue(self.config(out)['tie_word_embeddings'])

    def test_gpt_nano_sorts(self):
        """A trained model with golden activations: nn.Linear matrices, an untied head, masks among the weights."""
        import base64
        raw, golden = (json.load(open(data('models', 'gpt-nano-sort', name))) for name in ('gpt-nano-sort-model.json', 'gpt-nano-sort-t0-partials.json'))
        array = lambda e: np.frombuffer(base64.b64decode(e['data']), '<f4').reshape(e['shape'])
        state = {name: array(e) for name, e in raw.items() if name != 'config'}
        args = {k: raw['config'][k] for k in ('n_layer', 'n_head', 'n_embd', 'vocab_size', 'block_size')}
        path, out = torch_zip(self.path('model.pt'), state, lambda state: {'model': state, 'model_args': args}), self.path()
        self.convert(path, out, '--verify')
        self.assertFalse(self.config(out)['tie_word_embeddings'])
        ids, expected = array(golden['idx']).astype(int), array(golden['lm_head'])
        for row, want in zip(ids, expected):
            self.assertLess(np.abs(gpt2_logits(self.config(out), self.load(out), row) - want).max(), 1e-3)

    def test_real_torch(self):
        torch = package('torch')
        t = random_model(LLAMA)
        for legacy in (False, True):
            path, out = self.path(), self.path()
            os.makedirs(path)
            state = {name: torch.nn.Parameter(torch.from_numpy(a)) if 'norm' in name else torch.from_numpy(a).to(torch.bfloat16 if 'mlp' in name else torch.float32) for name, a in t.items()}
            torch.save(state, os.path.join(path, 'pytorch_model.bin'), _use_new_zipfile_serialization=not legacy)
            write(os.path.join(path, 'config.json'), json.dumps(LLAMA))
            self.convert(path, out, '--verify')
            self.same(self.load(out), {name: to_bf16(a) if 'mlp' in name else a for name, a in t.items()})

    def test_says_what_is_wrong(self):
        t = random_model(LLAMA)
        storages = {}
        state = torch_state({'a': t['lm_head.weight']}, storages)['a']
        storage = state.reduction[1][0]
        bad = lambda *args: {'a': Call('torch._utils._rebuild_tensor_v2', *args, False, None)}
        for obj, word in ((bad(storage, 0, (2401,), (1,)), 'does not fit its storage'), (bad(storage, 1, (300, 8), (8, 1)), 'does not fit'), (bad(storage, 0, (300, 300), (0, 0)), 'does not fit'), (bad(storage, -1, (2,), (1,)), 'does not fit'),
                          (bad(storage, 0, (2,), (-1,)), 'does not fit'), (bad('x', 0, (2,), (1,)), 'does not fit'), ([1], 'holds list'), ({'a': 1}, 'is int, expected a tensor'),
                          ({'a': Call('torch._utils._rebuild_tensor_v2')}, 'damaged pickle')):
            path = self.path('x.pt')
            with zipfile.ZipFile(path, 'w') as z:
                z.writestr('x/data.pkl', torch_pickle(obj))
                z.writestr('x/data/0', t['lm_head.weight'].tobytes())
            self.refused(word, path, self.path())
            os.unlink(path)
        path = torch_zip(self.path('x.pt'), t)
        self.refused('no config.json beside it and no model_args', path, self.path())
        blob = bytearray(open(path, 'rb').read())
        at = blob.index(t['lm_head.weight'].tobytes())
        blob[at] ^= 1
        os.mkdir(os.path.join(self.dir, 'm'))
        write(os.path.join(self.dir, 'm', 'pytorch_model.bin'), bytes(blob))
        write(os.path.join(self.dir, 'm', 'config.json'), json.dumps(LLAMA))
        self.refused('Bad CRC-32', os.path.join(self.dir, 'm'), self.path())


class Evil:
    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


class Pickle(Case):
    def test_cannot_run_code(self):
        """Every road that runs code in pickle.load: refused, with no import, no file, no process on the way."""
        marker = self.path('ran')
        system, shell = b'cos\nsystem\n', f'touch {marker}'.encode()
        text = lambda b: b'X' + struct.pack('<I', len(b)) + b
        hostile = {
            'reduce': pickle.dumps(Evil(os.system, (f'touch {marker}',)), 2),
            'reduce 4': pickle.dumps(Evil(os.system, (f'touch {marker}',)), 4),
            'eval': pickle.dumps(Evil(eval, (f'open({marker!r}, "w")',)), 2),
            'exec': pickle.dumps(Evil(exec, (f'open({marker!r}, "w")',)), 4),
            'import': pickle.dumps(Evil(__import__, ('antigravity',)), 2),
            'getattr': b'\x80\x02c__builtin__\ngetattr\nc__builtin__\nobject\nX\x06\x00\x00\x00system\x86R' + text(shell) + b'\x85R.',
            'protocol 0': system + b'(S\'' + shell + b'\'\ntR.',
            'INST': b'(S\'' + shell + b'\'\nios\nsystem\n.',
            'OBJ': b'(' + system + text(shell) + b'o.',
            'NEWOBJ': b'\x80\x02' + system + text(shell) + b'\x85\x81.',
            'NEWOBJ_EX': b'\x80\x04' + system + text(shell) + b'\x85}\x92.',
            'EXT': b'\x80\x02\x82\x01.',
            'BUILD setstate': b'\x80\x02' + system + b'}' + text(b'__setstate__') + system + b'sb' + text(shell) + b'b0.',
            'dotted global': b'\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R.',
            'attribute of an allowed one': b'\x80\x02ccollections\nOrderedDict.__init__.__globals__\n)R.',
            'call of a result': b'\x80\x02ccollections\nOrderedDict\n)R)R.',
            'space in a name': b'\x80\x02ccollections OrderedDict\nx\n)R.',
            'STACK_GLOBAL': b'\x80\x04' + text(b'os') + text(b'system') + b'\x93' + text(shell) + b'\x85R.',
            'persistent id': b'\x80\x02' + system + text(shell) + b'\x85RQ.',
            'storage type': b'\x80\x02(' + text(b'storage') + system + text(b'0') + text(b'cpu') + b'K\x01tQ.',
            'text persistent id': b'Pos.system\n.',
            'numpy': b'\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.',
        }
        seen, watching = [], False
        for maker in (torch_zip, torch_old):
            cw.open_torch(maker(self.path('good.pt'), random_model(GPT2)))        # what reading imports is imported now
            os.unlink(self.path('good.pt'))
        sys.addaudithook(lambda event, args: seen.append((event, args)) if watching and not event.startswith(('object.__getattr__', 'sys._getframe')) else None)
        for name, blob in hostile.items():
            path = self.path('pytorch_model.pt')
            with zipfile.ZipFile(path, 'w') as z:
                z.writestr('x/data.pkl', blob)
            legacy = write(self.path('legacy.pt'), b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})) + blob)
            for file in (path, legacy):
                seen.clear()
                watching = True
                with self.assertRaises(cw.Refused, msg=name) as e:
                    cw.open_torch(file)
                watching = False
                self.assertEqual([x for x in seen if x[0] != 'open'], [], name)
                self.assertTrue(all(x[1][0] == file and 'r' in (x[1][1] or 'r') for x in seen), seen)
                self.assertIn(file, str(e.exception))
                if b'R' in blob and name.split()[0] in ('reduce', 'eval', 'exec', 'import', 'getattr', 'dotted', 'attribute', 'STACK_GLOBAL', 'numpy'):
                    self.assertRegex(str(e.exception), 'calls .* which is no part of a weights file', name)
        watching = False
        self.assertFalse(os.path.exists(marker))
        self.assertFalse(hasattr(cw, 'pickle'))

    def test_hostile_sizes(self):
        """Lengths and shared structures that would take memory or time."""
        start = time.monotonic()
        deep = b'\x80\x02' + b']' * 20000 + b'a' * 19999 + b'.'
        shared = b'\x80\x02]q\x00' + b''.join(b']q' + bytes([i + 1]) + b'(h' + bytes([i]) + b'h' + bytes([i]) + b'e' for i in range(60)) + b'.'
        args = b'\x80\x02}(X\x05\x00\x00\x00model}X\x0a\x00\x00\x00model_args}X\x03\x00\x00\x00dim' + shared[2:-1] + b'su.'
        cycle = b'\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.'
        web = b'\x80\x02}q\x00' + b''.join(b'}q' + bytes([i + 1]) + b'(K\x01h' + bytes([i]) + b'K\x02h' + bytes([i]) + b'u' for i in range(60)) + b'.'
        start_of_legacy = b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}))
        for blob in (cycle, web, shared):
            with self.assertRaises(cw.Refused):
                cw.open_torch(write(self.path(), start_of_legacy + blob + pickle.dumps(['0'], 2) + bytes(8)))
        for blob in (cycle, web, b'\x80\x02\x8e' + struct.pack('<Q', 1 << 40) + b'.', b'\x80\x02B' + struct.pack('<I', 0x7FFFFFFF), b'\x80\x02r\xff\xff\xff\x7f.', b'\x80\x02K\x01r\xff\xff\xff\x7f.', b'\x80\x02\x8b\xff\xff\xff\x7f', b'\x80\x02' + b'(' * 100000 + b'.', deep, shared, args,
                     b'\x80\x02h\x05.', b'\x80\x02a.', b'\x80\x02(s.', b'', b'\x80', b'\x80\x02}]Ns.', b'\x80\x02}]K\x01s.', b'\x80\x02t.', b'\x80\x02R.'):
            path = self.path('x.pt')
            with zipfile.ZipFile(path, 'w') as z:
                z.writestr('x/data.pkl', blob)
            with self.assertRaises(cw.Refused):
                tensors, model_args = cw.open_torch(path)
                cw.bind(cw.open_training_checkpoint(path, tensors, model_args), path)
        self.assertLess(time.monotonic() - start, 5)


class Gguf(Case):
    FAMILIES = [LLAMA, {**LLAMA, 'tie_word_embeddings': True, 'head_dim': 6}, {**LLAMA, 'model_type': 'mistral'}, {**LLAMA, 'attention_bias': True, 'mlp_bias': True}, {**LLAMA, 'model_type': 'qwen2', 'rope_theta': 1e6},
                {**LLAMA, 'model_type': 'qwen3', 'head_dim': 6}, {**LLAMA, 'model_type': 'smollm3', 'num_hidden_layers': 4, 'no_rope_layers': [1, 1, 1, 0]},
                {**LLAMA, 'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}, 'hidden_size': 256, 'vocab_size': 10},
                GPT2]

    def test_there_and_back(self):
        """Every family: Hugging Face -> GGUF -> Hugging Face gives the same tensors and the same model."""
        for config in self.FAMILIES:
            t = random_model(config)
            source, file, out = write_hf(self.path(), config, t), self.path('m.gguf'), self.path()
            self.convert(source, file, '--to', 'gguf', '--verify')
            self.convert(file, out, '--verify')
            self.same(self.load(out), t)
            back, was = cw.describe(self.config(out), out), cw.describe(config, '')
            self.assertEqual({**was, 'llama3': None}, {**back, 'llama3': None})
            self.assertEqual({k: v for k, v in (was.get('llama3') or {}).items()}, {k: v for k, v in (back.get('llama3') or {}).items() if k != 'rope_type'})
            os.unlink(file)

    def test_reads_what_llama_cpp_writes(self):
        for config in self.FAMILIES[:7]:
            arch = {'mistral': 'llama'}.get(config['model_type'], config['model_type'])
            t = random_model(config)
            path, out = write(self.path(), gguf_bytes(*gguf_model(config, t, arch))), self.path()
            self.convert(path, out, '--verify')
            self.same(self.load(out), t)

    def test_writes_what_the_package_reads(self):
        gguf = package('gguf')
        for config in (LLAMA, self.FAMILIES[4]):
            t, arch = random_model(config), config['model_type']
            for dtype, cast in (('f32', lambda a: a), ('f16', lambda a: a.astype('<f2'))):
                file = self.path('m.gguf')
                self.convert(write_hf(self.path(), config, t), file, '--to', 'gguf', '--dtype', dtype)
                reader = gguf.GGUFReader(file)
                expected = gguf_model(config, t, arch)[1]
                self.assertEqual(sorted(x.name for x in reader.tensors), sorted(expected))
                for x in reader.tensors:
                    want = cast(expected[x.name]) if expected[x.name].ndim > 1 else expected[x.name]
                    self.assertEqual(np.asarray(x.data).reshape(want.shape).tobytes(), want.tobytes(), x.name)
                self.assertEqual(reader.fields[f'{arch}.attention.head_count_kv'].contents(), 1)
                self.assertEqual(reader.fields['general.file_type'].contents(), 0 if dtype == 'f32' else 1)
                os.unlink(file)

    def test_every_block_type(self):
        """Blocks of random bits against the package, tensors larger than one piece, and two formats worked out here."""
        gguf = package('gguf')
        import gguf.quants
        config = {**LLAMA, 'hidden_size': 256, 'intermediate_size': 512, 'num_hidden_layers': 1, 'tie_word_embeddings': True}
        t, rng = random_model(config), np.random.default_rng(5)
        for kind in ('BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ4_NL', 'IQ4_XS'):
            kind = gguf.GGMLQuantizationType[kind]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            fields, tensors = gguf_model(config, t)
            expected = {}
            for name, a in tensors.items():
                if a.ndim == 2:
                    raw = rng.integers(0, 256, (a.shape[0], a.shape[1] // block * size), 'u1')
                    tensors[name] = (int(kind), a.shape, raw.tobytes())
                    with np.errstate(all='ignore'):
                        expected[name] = gguf.quants.dequantize(raw, kind)
            path, out = write(self.path(), gguf_bytes(fields, tensors)), self.path()
            piece, cw.PIECE = cw.PIECE, 3 * 256
            try:
                text = self.convert(path, out, '--dtype', 'f32')
            finally:
                cw.PIECE = piece
            self.assertIn(kind.name, text)
            found = self.load(out)
            np.testing.assert_array_equal(found['model.embed_tokens.weight'], expected['token_embd.weight'])
            np.testing.assert_array_equal(found['model.layers.0.mlp.down_proj.weight'], expected['blk.0.ffn_down.weight'])
            q = expected['blk.0.attn_q.weight']                    # rows 0, 1, 2, ... of a head of 128 become 0, 64, 1, ...
            np.testing.assert_array_equal(found['model.layers.0.self_attn.q_proj.weight'][[0, 64, 1, 65]], q[[0, 1, 2, 3]])
            if kind.name in ('Q8_0', 'Q4_1'):
                b = np.frombuffer(tensors['token_embd.weight'][2], 'u1').reshape(-1, size)
                scale = b[:, :2].copy().view('<f2').astype('<f4')
                with np.errstate(all='ignore'):
                    values = scale * b[:, 2:].view('i1') if kind.name == 'Q8_0' else scale * np.concatenate([b[:, 4:] & 15, b[:, 4:] >> 4], 1) + b[:, 2:4].copy().view('<f2').astype('<f4')
                np.testing.assert_array_equal(found['model.embed_tokens.weight'], values.astype('<f4').reshape(300, 256))

    def test_the_package_is_named_where_it_is_missing(self):
        config = {**LLAMA, 'hidden_size': 32, 'tie_word_embeddings': True}
        fields, tensors = gguf_model(config, random_model(config))
        tensors['token_embd.weight'] = (8, (300, 32), bytes(300 * 34))
        path = write(self.path(), gguf_bytes(fields, tensors))
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == 'gguf' or name.startswith('gguf.')}
        sys.modules['gguf'] = None
        try:
            self.refused('token_embd.weight|pip install gguf', path, self.path())
        finally:
            del sys.modules['gguf']
            sys.modules.update(hidden)

    def test_says_what_is_wrong(self):
        t = random_model(LLAMA)
        fields, tensors = gguf_model(LLAMA, t)
        with_field = lambda key, entry: gguf_bytes({**fields, key: entry}, tensors)
        without = lambda key: gguf_bytes({k: v for k, v in fields.items() if k != key}, tensors)
        blob = gguf_bytes(fields, tensors)
        for content, words in ((with_field('llama.expert_count', (4, 8)), 'llama.expert_count is 8'), (with_field('llama.logit_scale', (6, 2.0)), 'llama.logit_scale'), (with_field('llama.rope.scaling.type', (8, 'yarn')), 'yarn'),
                               (with_field('general.architecture', (8, 'mamba')), 'mamba'), (with_field('split.count', (4, 3)), 'one of 3 parts'), (without('llama.block_count'), 'num_hidden_layers is missing'), (with_field('llama.vocab_size', (4, 7)), 'has 300 rows'),
                               (with_field('general.alignment', (4, 0)), 'alignment is 0'), (gguf_bytes(fields, {}), 'no tensors'), (gguf_bytes(fields, {**tensors, 'blk.0.extra.weight': t['model.norm.weight']}), 'blk.0.extra.weight is no weight'),
                               (blob[:4] + b'\x01' + blob[5:], 'version 1'), (blob[:24] + struct.pack('<Q', 4) + b'list' + struct.pack('<IIQ', 9, 0, 1 << 40), 'a list of 1099511627776 values'),
                               (blob.replace(struct.pack('<I2QIQ', 2, 8, 300, 0, 0), struct.pack('<I2QIQ', 2, 8, 300, 0, 32)), 'begins at byte'), (blob.replace(struct.pack('<I2QIQ', 2, 8, 300, 0, 0), struct.pack('<I2QIQ', 2, 8, 300, 0, 8)), 'token_embd.weight begins at byte 8'), (gguf_bytes(fields, {**tensors, 'rope_freqs.weight': np.full(2, 3.5, '<f4')}), 'rope_freqs.weight'),
                               (gguf_bytes(fields, {**tensors, 'token_embd.weight': (99, (300, 8), bytes(9600))}), 'token_embd.weight|99')):
            self.refused(words, write(self.path(), content), self.path())
        package('gguf')
        self.refused('rows of 8 values, expected a multiple of the 32', write(self.path(), gguf_bytes(fields, {**tensors, 'token_embd.weight': (8, (300, 8), bytes(9600))})), self.path())

    def test_transformers_reads_the_same(self):
        package('gguf')
        package('torch')
        transformers = package('transformers')
        config = {**LLAMA, 'hidden_size': 64, 'intermediate_size': 64, 'architectures': ['LlamaForCausalLM']}
        import torch
        fields, tensors = gguf_model(config, random_model(config))
        pieces, scores, types = spm_pieces()
        for key, entry in {'model': (8, 'llama'), 'tokens': (8, pieces), 'scores': (6, scores), 'token_type': (5, types), 'bos_token_id': (4, 1), 'eos_token_id': (4, 2), 'unknown_token_id': (4, 0)}.items():
            fields['tokenizer.ggml.' + key] = entry
        path, out = write(self.path('m.gguf'), gguf_bytes({**fields, 'llama.vocab_size': (4, 300), 'llama.rope.dimension_count': (4, 32)}, tensors)), self.path()
        self.convert(path, out)
        ids = torch.tensor([[1, 5, 290, 7, 44]])
        with torch.no_grad():
            ours = transformers.AutoModelForCausalLM.from_pretrained(out)(ids).logits
            theirs = transformers.AutoModelForCausalLM.from_pretrained(self.dir, gguf_file='m.gguf')(ids).logits
        self.assertLess((ours - theirs).abs().max(), 1e-4)
        self.assertLess(np.abs(ours[0].numpy() - llama_logits(config, self.load(out), ids[0].numpy())).max(), 1e-3)
        self.assertEqual(transformers.AutoTokenizer.from_pretrained(out)('the in').input_ids[0], 1)


class HuggingFace(Case):
    def test_types(self):
        t = random_model(LLAMA)
        source = write_hf(self.path(), {**LLAMA, 'torch_dtype': 'float32'}, t)
        for dtype, cast, name in (('f32', lambda a: a, 'float32'), ('f16', lambda a: a.astype('<f2'), 'float16'), ('bf16', to_bf16, 'bfloat16')):
            out, back = self.path(), self.path()
            self.convert(source, out, '--dtype', dtype, '--verify')
            self.same(self.load(out), t, cast)
            self.assertEqual(self.config(out)['torch_dtype'], name)
            self.convert(out, back, '--dtype', 'f32')
            self.same(self.load(back), t, lambda a: from_bf16(to_bf16(a)) if dtype == 'bf16' else cast(a).astype('<f4'))

    def test_rounding(self):
        values = np.array([1, -1, 0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.0e38, 1e-40, np.inf, -np.inf], '<f4')
        np.testing.assert_array_equal(from_bf16(cw.cast(values, 'F32', 'BF16', '')), np.array([1, -1, 0, 1, 1 + 2**-6, 1 + 2**-7, from_bf16(to_bf16(values[6:7]))[0], from_bf16(to_bf16(values[7:8]))[0], np.inf, -np.inf], '<f4'))
        self.assertTrue(np.isnan(from_bf16(cw.cast(np.array([np.nan, -np.nan], '<f4'), 'F32', 'BF16', ''))).all())
        nan = np.array([0x7F800001, 0xFFFFFFFF], '<u4').view('<f4')
        self.assertTrue(np.isnan(from_bf16(cw.cast(nan, 'F32', 'BF16', ''))).all())
        for value, want in ((70000, 'F16'), (3.4e38, 'BF16')):
            with self.assertRaisesRegex(cw.Refused, 'w: .* is beyond the range of'):
                cw.cast(np.array([1, value], '<f4'), 'F32', want, 'w')

    def test_shards(self):
        t = random_model(LLAMA)
        source, out, back = write_hf(self.path(), LLAMA, t), self.path(), self.path()
        self.convert(source, out, '--max-shard-size', '10kB', '--verify')
        names = sorted(name for name in os.listdir(out) if name.endswith('.safetensors'))
        index = json.load(open(os.path.join(out, 'model.safetensors.index.json')))
        self.assertEqual(names, [f'model-{i + 1:05d}-of-00003.safetensors' for i in range(3)])
        self.assertEqual(index['metadata']['total_size'], sum(a.nbytes for a in t.values()))
        self.assertEqual(sorted(index['weight_map']), sorted(t))
        self.same(self.load(out), t)
        self.convert(out, back)
        self.same(self.load(back), t)
        os.unlink(os.path.join(out, names[1]))
        self.refused(names[1], out, self.path())

    def test_gpt2_style_names(self):
        t = random_model(GPT2)
        short = {name[len('transformer.'):]: a for name, a in t.items()}
        masks = {f'h.{n}.attn.bias': np.ones((1, 1, 7, 7), '|u1') for n in range(2)}
        out, more = self.path(), self.path()
        text = self.convert(write_hf(self.path(), GPT2, {**short, **masks}), out, '--verify')
        self.assertIn('ignored: h.0.attn.bias and 1 more', text)
        self.same(self.load(out), t)
        self.convert(write_hf(self.path(), GPT2, {**t, 'lm_head.weight': t['transformer.wte.weight']}), more)
        self.same(self.load(more), t)
        self.refused('lm_head.weight differs from transformer.wte.weight', write_hf(self.path(), GPT2, {**t, 'lm_head.weight': t['transformer.wte.weight'] + 1}), self.path())

    def test_llmc(self):
        t = random_model(GPT2)
        for version, cast in ((3, lambda a: a), (5, to_bf16)):
            out = self.path()
            self.convert(write(self.path(), llmc_bytes(GPT2, t, version)), out, '--verify')
            self.same(self.load(out), t, cast)
            self.assertEqual({**self.config(out), **GPT2}, self.config(out))
        self.refused('version 4', write(self.path(), llmc_bytes(GPT2, t, 4)), self.path())
        self.refused('padded vocabulary is 10', write(self.path(), llmc_bytes({**GPT2, 'vocab_size': 11}, t, 3)[:28] + struct.pack('<i', 10) + llmc_bytes(GPT2, t)[32:]), self.path())

    def test_files_that_come_along(self):
        t = random_model(LLAMA)
        source = write_hf(self.path(), LLAMA, t, tokenizer__json='{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', generation_config__json='{"temperature": 0.6}', chat_template__jinja='{{ messages }}', secret__txt='x')
        out = self.path()
        self.convert(source, out)
        self.assertEqual(sorted(os.listdir(out)), ['chat_template.jinja', 'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json'])
        self.assertEqual(open(os.path.join(out, 'generation_config.json')).read(), '{"temperature": 0.6}')

    def test_safetensors_and_transformers_load_it(self):
        safetensors = package('safetensors.numpy')
        t = random_model(LLAMA)
        out = self.path()
        self.convert(write(self.path(), llama2c_bytes(LLAMA, t)), out)
        with safetensors.safe_open(os.path.join(out, 'model.safetensors'), 'np') as f:
            self.assertEqual(f.metadata(), {'format': 'pt'})
        self.same(safetensors.numpy.load_file(os.path.join(out, 'model.safetensors')), t)
        torch = package('torch')
        transformers = package('transformers')
        for config, logits in ((LLAMA, llama_logits), (GPT2, gpt2_logits)):
            out, t = self.path(), random_model(config)
            self.convert(write(self.path(), llama2c_bytes(config, t) if config is LLAMA else llmc_bytes(config, t)), out)
            ids = [1, 5, 2, 7, 4]
            with torch.no_grad():
                theirs = transformers.AutoModelForCausalLM.from_pretrained(out)(torch.tensor([ids])).logits[0].numpy()
            self.assertLess(np.abs(theirs - logits(config, t, ids)).max(), 1e-4)

    def test_foreign_file(self):
        """A file of another program's making, of a model that is none of ours."""
        found = cw.open_safetensors(data('models', 'hf2q-tiny-model', 'model.safetensors'))
        self.assertEqual({name: (x.shape, x.dtype) for name, x in found.items()}['model.layers.0.self_attn.q_proj.weight'], ((8, 8), 'F16'))
        self.assertTrue(np.isfinite(found['model.embed_tokens.weight'].load()).all())
        self.refused("model_type is 'tiny_test'", data('models', 'hf2q-tiny-model'), self.path())

    def test_says_what_is_wrong(self):
        t = random_model(LLAMA)
        drop = lambda name: {k: v for k, v in t.items() if k != name}
        for tensors, words in ((drop('model.norm.weight'), 'tensor model.norm.weight is missing'), ({**t, 'model.layers.2.mlp.up_proj.weight': t['model.norm.weight']}, 'model.layers.2.mlp.up_proj.weight is no weight of a llama model'),
                               ({**t, 'model.norm.weight': np.ones(9, '<f4')}, 'model.norm.weight is [9], the config wants [8]'), ({**t, 'model.norm.weight': np.ones(8, '|u1')}, 'model.norm.weight is U8')):
            self.refused(words, write_hf(self.path(), LLAMA, tensors), self.path())
        for change, words in (({'hidden_size': 'x'}, "hidden_size is 'x'"), ({'num_hidden_layers': 5000}, 'num_hidden_layers is 5000, expected a whole number in 1..1024'), ({'num_attention_heads': 3}, 'a multiple of the 3 heads'), ({'num_attention_heads': True}, 'is True'),
                              ({'quantization_config': {}}, 'quantization_config'), ({'model_type': ['llama']}, 'model_type is list'), ({'rope_scaling': {'type': 'linear', 'factor': 2}}, 'rope_scaling'), ({'vocab_size': None}, 'vocab_size is missing'), ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'"), ({'max_position_embeddings': 1 << 25}, 'max_position_embeddings'), ({'layer_types': ['sliding_attention']}, 'layer_types'),
                              ({'model_type': 'mistral', 'sliding_window': 4}, 'sliding_window is 4'), ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8, 'low_freq_factor': 4, 'high_freq_factor': 4, 'original_max_position_embeddings': 8}}, 'low_freq_factor < high_freq_factor'), ({'rms_norm_eps': -1}, 'rms_norm_eps is -1')):
            self.refused(words, write_hf(self.path(), {**LLAMA, **change}, t), self.path())
        source = write_hf(self.path(), LLAMA, t)
        write(os.path.join(source, 'config.json'), json.dumps(LLAMA)[:-1] + ', "name": "\\ud800"}')
        self.refused('config.json: no JSON|surrogates', source, self.path())
        entry = lambda *place, shape=(2,), dtype='F32': {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(place)}
        for header, words in (({'a': entry(0, 8), 'b': entry(4, 12)}, 'tensor b begins at byte 4'), ({'a': entry(0, 8), 'b': entry(12, 20)}, 'begins at byte 12'), ({'a': entry(0, 16, shape=(4,))}, 'the tensors end at'), ({'a': entry(0, 9)}, 'expected 8 bytes'),
                              ({'a': entry(0, 8, dtype='Q9')}, "dtype 'Q9'"), ({'a': entry(0, 8, shape=(-2,))}, 'shape [-2]'), ({'a': entry(0, 8, shape=(2**32, 2**32, 2**32))}, 'bytes'), ({'a': 5}, 'dtype None')):
            text = json.dumps(header).encode()
            source = write_hf(self.path(), LLAMA, {})
            write(os.path.join(source, 'model.safetensors'), struct.pack('<Q', len(text)) + text + bytes(12))
            self.refused(words, source, self.path())
        for blob, words in ((struct.pack('<Q', 1 << 62) + b'{}', 'header length is 4611686018427387904'), (b'abc', 'the header length wants 8 bytes'), (struct.pack('<Q', 16) + b'{"a": 1, "a": 2}', 'a key stands there twice'), (struct.pack('<Q', 40000) + b'[' * 40000, 'no JSON')):
            source = write_hf(self.path(), LLAMA, {})
            write(os.path.join(source, 'model.safetensors'), blob)
            self.refused(words, source, self.path())


class Command(Case):
    def run_tool(self, *args, **kwargs):
        return subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True, **kwargs)

    def test_answers(self):
        t = random_model(LLAMA)
        source = write_hf(self.path(), LLAMA, t)
        ran = self.run_tool(source, self.path('out'))
        self.assertEqual((ran.returncode, ran.stdout.splitlines()[-1]), (0, f'wrote {os.path.join(self.dir, "out")}'))
        self.assertRegex(ran.stderr, r'written 0\.0 of 0\.0 MB \(100 %\), \d+ MB/s, 0 s left')
        again = self.run_tool(source, self.path('out'))
        self.assertEqual((again.returncode, again.stdout), (1, again.stdout))
        self.assertIn('exists already', again.stderr)
        self.assertEqual(self.run_tool(source).returncode, 2)
        self.assertEqual(self.run_tool(source, self.path(), '--to', 'onnx').returncode, 2)
        self.assertEqual(self.run_tool(source, self.path(), '--max-shard-size', 'many').returncode, 2)
        self.assertIn('No such file', self.run_tool(self.path('nothing'), self.path()).stderr)
        self.assertIn('does not exist', self.run_tool(source, os.path.join(self.dir, 'no', 'where')).stderr)
        self.assertIn('--max-shard-size', self.run_tool('--help').stdout)

    def test_inputs_that_are_no_files(self):
        """A FIFO is not waited for, a link that leads nowhere is not passed over."""
        source = write_hf(self.path(), LLAMA, random_model(LLAMA))
        aside = os.path.join(source, 'tokenizer.json')
        for make, words in ((os.mkfifo, 'tokenizer.json: is a device or a pipe, expected a file'), (lambda path: os.symlink('nowhere', path), 'tokenizer.json: No such file')):
            make(aside)
            self.refused(words, source, self.path())
            os.unlink(aside)
        fifo = self.path()
        os.mkfifo(fifo)
        self.refused('is a device or a pipe', fifo, self.path())
        self.refused('is a device or a pipe', '/dev/zero', self.path())

    def test_output_that_nobody_reads(self):
        """The conversion stands, and there is one sentence."""
        source = write_hf(self.path(), LLAMA, random_model(LLAMA))
        reader, writer = os.pipe()
        os.close(reader)
        buffered = {key: value for key, value in os.environ.items() if key != 'PYTHONUNBUFFERED'}
        for out, stdout in ((self.path(), writer), (self.path(), None)):
            command = f'exec "$@"{"" if stdout else " >&-"}'
            ran = subprocess.run(['sh', '-c', command, 'sh', sys.executable, TOOL, source, out], stdout=stdout, stderr=subprocess.PIPE, text=True, env=buffered)
            self.assertEqual((ran.returncode, os.path.isfile(os.path.join(out, 'model.safetensors'))), (0, True), ran.stderr)
            self.assertNotIn('Exception', ran.stderr)
            self.assertEqual('standard output: Broken pipe' in ran.stderr, stdout is not None)
        os.close(writer)

    def test_verify_finds_damage(self):
        source = write_hf(self.path(), LLAMA, random_model(LLAMA))
        put = cw.put

        def damaged(f, array, have, want, name, progress):
            if name == 'model.layers.1.mlp.up_proj.weight':
                array = array.copy()
                array[3, 3] += 1e-3
            return put(f, array, have, want, name, progress)
        cw.put = damaged
        try:
            for to in ('hf', 'gguf', 'llama2c'):
                self.refused('model.layers.1.mlp.up_proj.weight reads back with other values', source, self.path(), '--to', to, '--verify')
        finally:
            cw.put = put

    def test_nothing_half_written(self):
        """A value out of range in the last tensor, a full disk, a signal: OUT does not exist and nothing else is left."""
        t = random_model(LLAMA)
        t['lm_head.weight'] = t['lm_head.weight'].copy()
        t['lm_head.weight'][-1, -1] = 1e6
        for to in ('hf', 'gguf'):
            self.refused('lm_head.weight: 1e+06 is beyond the range of F16', write_hf(self.path(), LLAMA, t), self.path(), '--to', to, '--dtype', 'f16')
        source = write_hf(self.path(), LLAMA, random_model(LLAMA))
        before = sorted(os.listdir(self.dir))
        resource = package('resource')
        signal_off = lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)), signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        for to in ('hf', 'gguf', 'llama2c'):
            ran = self.run_tool(source, self.path(), '--to', to, preexec_fn=signal_off)
            self.assertEqual(ran.returncode, 1, ran.stderr)
            self.assertIn('File too large', ran.stderr)
            self.assertNotIn('Traceback', ran.stderr)
            self.assertEqual(sorted(os.listdir(self.dir)), before)
        big = self.big_model()
        before = sorted(os.listdir(self.dir))
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)      # a shell's background jobs ignore it
        for sign in (signal.SIGTERM, signal.SIGINT):
            child = subprocess.Popen([sys.executable, TOOL, big, self.path()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed)
            for _ in range(1000):
                time.sleep(0.005)
                if len(os.listdir(self.dir)) > len(before) or child.poll() is not None:
                    break
            child.send_signal(sign)
            self.assertNotEqual(child.wait(), 0)
            self.assertEqual(sorted(os.listdir(self.dir)), before)

    def big_model(self, size=(1 << 20, 64), layers=3):
        """About 800 MB of zeros that take no room on the disk: [2^20, 64] embeddings of 268 MB, and the like."""
        config = {**LLAMA, 'vocab_size': size[0], 'hidden_size': size[1], 'intermediate_size': size[0] // 8, 'num_hidden_layers': layers}
        header, at = {}, 0
        for name, shape in shapes(config):
            n = 4 * int(np.prod(shape))
            header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [at, at + n]}
            at += n
        text = json.dumps(header).encode()
        path = write_hf(self.path(), config, {})
        with open(os.path.join(path, 'model.safetensors'), 'wb') as f:
            f.write(struct.pack('<Q', len(text)) + text)
            f.truncate(8 + len(text) + at)
        return path

    @long_sweep
    def test_memory(self):
        """Peak memory: the largest tensor and 200 MB at most, whatever the whole model takes."""
        package('resource')
        size = (1 << 18, 128)
        source, largest = self.big_model(size, 6), 4 * size[0] * size[1]
        total = os.path.getsize(os.path.join(source, 'model.safetensors'))
        self.assertGreater(total, largest + 400e6)
        measure = 'import resource, sys; sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name="__main__"); print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))'
        for args in (['--dtype', 'f16'], ['--to', 'gguf', '--dtype', 'bf16'], ['--to', 'llama2c']):
            out = self.path()
            ran = subprocess.run([sys.executable, '-c', measure, TOOL, source, out, *args], capture_output=True, text=True)
            self.assertEqual(ran.returncode, 0, ran.stderr)
            peak = int(ran.stdout.split('peak ')[1])
            self.assertLess(peak, largest + 200e6, args)
            shutil.rmtree(out) if os.path.isdir(out) else os.unlink(out)
        # a directory of PyTorch's, whose storages lie in a zip
        torch_dir = self.path()
        os.makedirs(torch_dir)
        shutil.copy(os.path.join(source, 'config.json'), torch_dir)
        zeros = {tuple(shape): np.zeros(shape, '<f2') for _, shape in shapes(self.config(source))}
        torch_zip(os.path.join(torch_dir, 'pytorch_model.bin'), {name: zeros[tuple(shape)] for name, shape in shapes(self.config(source))})
        ran = subprocess.run([sys.executable, '-c', measure, TOOL, torch_dir, self.path(), '--dtype', 'f32'], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertLess(int(ran.stdout.split('peak ')[1]), largest + 200e6)


class Fuzz(Case):
    """Every prefix of small files, and flips of their bits: an error in words or a conversion, and nothing else."""
    def inputs(self):
        small = {**LLAMA, 'vocab_size': 6, 'hidden_size': 4, 'intermediate_size': 4, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'max_position_embeddings': 2, 'tie_word_embeddings': True}
        gpt2 = {**GPT2, 'n_embd': 2, 'n_layer': 1, 'n_head': 1, 'n_positions': 2, 'vocab_size': 3}
        t = random_model(small)
        fields, tensors = gguf_model(small, t)
        pieces = ['<unk>', '<s>', '</s>', 'a', 'b', 'ab']
        for key, entry in {'model': (8, 'llama'), 'tokens': (8, pieces), 'scores': (6, [0.0] * 6), 'token_type': (5, [2, 3, 3, 1, 1, 1]), 'bos_token_id': (4, 1)}.items():
            fields['tokenizer.ggml.' + key] = entry
        yield 'llama2c v0', llama2c_bytes(small, t), None, 'm.bin'
        yield 'llama2c v1', llama2c_bytes(small, t, 1), None, 'm.bin'
        yield 'llama2c v2', llama2c_bytes(small, t, 2), None, 'm.bin'
        yield 'llm.c', llmc_bytes(gpt2, random_model(gpt2), 3, 4), None, 'm.bin'
        yield 'gguf', gguf_bytes(fields, tensors), None, 'm.gguf'
        yield 'safetensors', safetensors_bytes(t), small, 'model.safetensors'
        yield 'torch', open(torch_zip(self.path(), t), 'rb').read(), small, 'pytorch_model.bin'
        yield 'torch legacy', open(torch_old(self.path(), t), 'rb').read(), small, 'pytorch_model.bin'
        yield 'config.json', json.dumps(small).encode(), None, 'config.json'
        yield 'tokenizer.json', cw.to_json(cw.gguf_tokenizer({key: value for key, (_, value) in fields.items()}, '')[0]), small, 'tokenizer.json'

    def attempt(self, path):
        """Everything short of writing: reads, maps, loads each tensor. True if the file is taken."""
        try:
            ckpt = cw.open_any(path)
            for w in cw.bind(ckpt, path)[0]:
                w.read()
            if ckpt.tokenizer is not None:
                cw.gguf_vocabulary(ckpt, cw.describe(ckpt.config, path)['V'], path)
            return True
        except cw.Refused as e:
            self.assertGreater(len(str(e)), 10)
            return False

    def test_prefixes_and_flips(self):
        resource = package('resource')
        old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, old[1]))      # a length that is believed becomes a MemoryError
        counts, step = [], 1 if EXHAUSTIVE or os.environ.get('FUZZ') else 16
        try:
            for kind, blob, config, name in self.inputs():
                folder = self.path()
                os.makedirs(folder)
                path = os.path.join(folder, name)
                if config:
                    write(os.path.join(folder, 'config.json'), json.dumps(config))
                    if name == 'tokenizer.json':
                        write(os.path.join(folder, 'model.safetensors'), safetensors_bytes(random_model(config)))
                elif name == 'config.json':
                    small = {k: json.loads(blob)[k] for k in LLAMA}
                    write(os.path.join(folder, 'model.safetensors'), safetensors_bytes(random_model(small)))
                target = folder if config or name == 'config.json' else path
                write(path, blob)
                self.assertTrue(self.attempt(target), kind)
                end = len(blob.rstrip(b'\0\n'[kind != 'gguf':])) if kind in ('gguf', 'tokenizer.json') else len(blob)     # padding after the last tensor may go
                for n in range(0, end, step):
                    write(path, blob[:n])
                    self.assertFalse(self.attempt(target), f'{kind}: the first {n} of {len(blob)} bytes are taken')
                flips = [(i, bit) for i in range(0, len(blob), step) for bit in range(8) if os.environ.get('FUZZ') or i < 64 or bit == i % 8]
                taken = 0
                for i, bit in flips:
                    damaged = bytearray(blob)
                    damaged[i] ^= 1 << bit
                    write(path, bytes(damaged))
                    taken += self.attempt(target)
                counts.append(f'{kind} {len(range(0, end, step))} prefixes, {len(flips)} flips ({taken} taken)')
        finally:
            resource.setrlimit(resource.RLIMIT_AS, old)
        print('       fuzzed: ' + '; '.join(counts))

    def model_with_everything(self):
        """A directory whose every JSON file says something: a sharded Llama with llama3 scaling and a SentencePiece tokenizer."""
        config = {**LLAMA, 'architectures': ['LlamaForCausalLM'], 'pad_token_id': 0, 'eos_token_id': [1, 2], 'head_dim': 4, 'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False, 'torch_dtype': 'float32',
                  'sliding_window': None, 'use_sliding_window': False, 'layer_types': ['full_attention'] * 2, 'quantization_config': None,
                  'rope_scaling': {'rope_type': 'llama3', 'rope_theta': 10000.0, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}}
        source, t = self.path(), random_model(config)
        pieces, scores, types = spm_pieces()
        root = cw.sentencepiece_tokenizer(pieces, scores, types, {'bos': 1, 'eos': 2, 'unk': 0}, True, True, '')
        root['model']['merges'] = root['model']['merges'][:20]
        self.convert(write_hf(self.path(), config, t, tokenizer__json=cw.to_json(root), tokenizer_config__json=json.dumps({'chat_template': 'x', 'bos_token': '<s>'})), source, '--max-shard-size', '5KB')
        return source

    @long_sweep
    def test_values_of_other_types(self):
        """Every field of every JSON file, at every depth, as every type: a conversion, or one sentence that names the file."""
        source = self.model_with_everything()
        odd = (None, True, False, 0, -1, 7, 2**31, 10**400, 0.5, -1e300, '', 'default', '\u00e4', [], [None], ['x', 2], {}, {'type': 5}, {'rope_type': []})
        spots, tried, taken = [], 0, 0

        def walk(value, place):
            spots.append(place)
            children = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
            for key, child in children if len(children) <= 40 else children[:2] + children[-2:]:      # of a vocabulary a few
                walk(child, (*place, key))

        def replaced(value, place, new):
            if not place:
                return new
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[place[0]] = replaced(value[place[0]], place[1:], new)
            return copy
        for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'model.safetensors.index.json'):
            path = os.path.join(source, name)
            good = open(path, 'rb').read()
            root = json.loads(good)
            spots.clear()
            walk(root, ())
            for n, (place, new) in enumerate((place, new) for place in spots for new in odd):
                write(path, json.dumps(replaced(root, place, new)))
                taken += self.taken(source, name, 'gguf' if n % 3 else 'hf')
                tried += 1
            write(path, good)
        self.assertGreater(taken, 100)
        print(f'       {tried} odd values ({taken} taken)')

    @long_sweep
    def test_gguf_values_of_other_types(self):
        """Every field of a GGUF file as every type."""
        fields, tensors = gguf_model(LLAMA, random_model(LLAMA))
        pieces, scores, types = spm_pieces()
        for key, entry in {'model': (8, 'llama'), 'tokens': (8, pieces), 'scores': (6, scores), 'token_type': (5, types), 'bos_token_id': (4, 1), 'eos_token_id': (4, 2), 'unknown_token_id': (4, 0), 'padding_token_id': (4, 0),
                           'add_bos_token': (7, True), 'add_space_prefix': (7, True), 'add_eos_token': (7, False), 'pre': (8, 'default'), 'merges': (8, ['a b'])}.items():
            fields['tokenizer.ggml.' + key] = entry
        fields.update({'general.alignment': (4, 32), 'split.count': (4, 1), 'llama.rope.dimension_count': (4, 4), 'llama.attention.key_length': (4, 4), 'tokenizer.chat_template': (8, 'x')})
        path, tried, taken = self.path('m.gguf'), 0, 0
        odd = ((4, 0), (4, 2**32 - 1), (5, -1), (10, 2**63), (6, 0.5), (6, float('nan')), (12, 1e300), (7, True), (7, False), (8, ''), (8, 'gpt2'), (8, []), (8, ['a b', '']), (5, []), (5, [-1, 3]), (6, [0.0]))
        for key in fields:
            for n, entry in enumerate((None, *odd)):
                changed = {**fields, key: entry}
                write(path, gguf_bytes({k: v for k, v in changed.items() if v}, tensors))
                taken += self.taken(path, path, 'hf' if n % 3 else 'gguf')
                tried += 1
        self.assertGreater(taken, 20)
        print(f'       {tried} odd values ({taken} taken)')

    def test_damaged_archives(self):
        """Zips of every compression that zipfile knows, bytes of them changed: never anything but a sentence."""
        small = {**LLAMA, 'vocab_size': 6, 'hidden_size': 4, 'intermediate_size': 4, 'num_hidden_layers': 1, 'tie_word_embeddings': True}
        source, rng = self.path(), np.random.default_rng(5)
        os.makedirs(source)
        write(os.path.join(source, 'config.json'), json.dumps(small))
        plain = zipfile.ZipFile(torch_zip(self.path(), random_model(small)))
        for method, good in (('ZIP_STORED', True), ('ZIP_DEFLATED', True), ('ZIP_BZIP2', False), ('ZIP_LZMA', False)):
            blob = io.BytesIO()
            with zipfile.ZipFile(blob, 'w', getattr(zipfile, method)) as packed:
                for info in plain.infolist():
                    packed.writestr(info.filename, plain.read(info))
            blob = blob.getvalue()
            path = write(os.path.join(source, 'pytorch_model.bin'), blob)
            self.assertEqual(self.attempt(source), good, method)
            for n in range(400):
                damaged = bytearray(blob)
                first = int(rng.integers(len(blob)))
                for i in range(first, min(len(blob), first + int(rng.choice([1, 2, 8, 50])))):
                    damaged[i] = int(rng.integers(256))
                write(path, bytes(damaged[:len(blob) if n % 4 else int(rng.integers(len(blob)))]))
                self.attempt(source)
        self.refused('pytorch_model.bin: entry |is compressed by method 14, expected stored (0) or deflated (8)', os.path.dirname(write(path, blob)), self.path())

    def taken(self, source, named, to):
        """Converts, and says whether it could; the error must be a sentence that begins with the file, and must leave nothing behind."""
        out, before = self.path(), os.listdir(self.dir)
        try:
            self.convert(source, out, '--to', to)
        except AssertionError as e:
            self.assertRegex(str(e), '^convert: convert_weights.py: ' + re.escape(source))
            self.assertRegex(str(e), re.escape(named) + '|: tensor .*(missing|the config wants|no weight of a)|as tie_word_embeddings is true')
            self.assertEqual(os.listdir(self.dir), before)
            return False
        shutil.rmtree(out) if to == 'hf' else os.unlink(out)
        return True

    @long_sweep
    def test_tokenizer_bin(self):
        pieces, scores, _ = spm_pieces()
        blob, path = tokenizer_bin(pieces, scores), self.path()
        for n in list(range(0, 600)) + list(range(len(blob) - 300, len(blob))):
            with self.assertRaises(cw.Refused):
                cw.read_llama2c_tokenizer(write(path, blob[:n]), 300)
        for i in range(0, len(blob), 3):
            damaged = bytearray(blob)
            damaged[i] ^= 1 << i % 8
            with contextlib.suppress(cw.Refused):
                cw.read_llama2c_tokenizer(write(path, bytes(damaged)), 300)


class Result(unittest.TestResult):
    """One line a test; skips and failures in full."""
    passed = 0

    def addSuccess(self, test):
        self.passed += 1
        print(f'ok     {test.id().split(".", 1)[1]}')

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f'skip   {test.id().split(".", 1)[1]}: {reason}')

    def addFailure(self, test, err):
        super().addFailure(test, err)
        print(f'FAIL   {test.id().split(".", 1)[1]}\n{self.failures[-1][1]}')

    def addError(self, test, err):
        super().addError(test, err)
        print(f'FAIL   {test.id().split(".", 1)[1]}\n{self.errors[-1][1]}')


if __name__ == '__main__':
    suite = unittest.TestSuite(test for group in unittest.defaultTestLoader.loadTestsFromModule(sys.modules['__main__']) for test in group if all(word in test.id() for word in sys.argv[1:]))
    result = Result()
    suite.run(result)
    failed = len(result.failures) + len(result.errors)
    print(f'{result.passed} passed, {failed} failed')
    sys.exit(failed > 0)
