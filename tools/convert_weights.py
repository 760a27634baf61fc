#!/usr/bin/env python3
"""Converts the weights of language models between the formats people have, tensor by tensor.

    convert_weights.py IN OUT [--tokenizer T] [--to hf|llama2c|gguf] [--dtype f32|f16|bf16] [--max-shard-size S] [--verify]
    convert_weights.py RANKS.tiktoken OUT          OUT becomes a directory with tokenizer.json

IN   a Hugging Face directory (safetensors or PyTorch, single or sharded), one of its weight files beside a config.json;
     a PyTorch .pt of llama2.c, nanoGPT or minGPT with model_args; llama2.c .bin (v0, v1, v2); llm.c GPT-2 .bin;
     GGUF with any block type that the package gguf dequantises (pip install gguf; F32, F16 and BF16 do without it).
     Or a vocabulary alone: tiktoken's ranks of r50k, p50k, cl100k, o200k or Llama 3, told by their number.
OUT  hf: a directory that transformers and tt_model_load read; llama2c: a .bin for run.c; gguf: a file for llama.cpp.
     OUT must not exist. It is written under another name and renamed when complete, so it is never half there.
T    tokenizer.json, a directory that has one, llama2.c's tokenizer.bin, or a GGUF file; default: what IN brings along.

Weights keep their type unless --dtype says otherwise; quantised blocks become f32. Every tensor is mapped by the
tables below and checked against the config; a tensor that the tables do not know is an error. Nothing in a file is
ever executed, and its sizes are believed only after they fit the file. Memory: the largest tensor and 200 MB at most.
Needs Python 3.8 and numpy.
"""
import argparse
import base64
import collections
import contextlib
import hashlib
import io
import json
import math
import os
import pickletools
import re
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import zipfile
import zlib

import numpy as np

BYTES = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U64': 8, 'U32': 4, 'U16': 2,
         'U8': 1, 'BOOL': 1, 'F8_E4M3': 1, 'F8_E5M2': 1}
NUMPY = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2'}      # what a weight may be; BF16 is its upper 16 bits
PIECE = 1 << 22                                                        # weights that are converted at a time
MAX_TEXT = 100 << 20                                                   # bytes of a JSON file, a header or a pickle


class Refused(Exception):
    """What is wrong with an input, in a sentence for the user: where, which value, what was expected."""


def refuse_if(wrong, text):
    if wrong:
        raise Refused(text)


# ==== the models: one table per family ==========================================================
# Hugging Face's name, GGUF's name, llama2.c's name, shape in Hugging Face's layout, and what is special:
#   rope=H  rows of H heads: each head's halves here, pairs side by side in llama2.c and in GGUF files of PAIRED
#   conv    [in, out] here and in GPT-2's own files, [out, in] elsewhere
#   if=X    only with the switch X
# * is the layer. The order is that of the output.

def table(text):
    Row = collections.namedtuple('Row', 'hf gguf meta shape rope conv switch')
    rows = []
    for line in text.strip().splitlines():
        hf, gguf, meta, shape, *special = line.split()
        special = dict(word.partition('=')[::2] for word in special)
        rows.append(Row(hf, gguf, meta, tuple(shape.split(',')), special.get('rope'), 'conv' in special, special.get('if')))
    return rows


LLAMA = table('''
    model.embed_tokens.weight                       token_embd.weight         tok_embeddings.weight              V,C
    model.layers.*.input_layernorm.weight           blk.*.attn_norm.weight    layers.*.attention_norm.weight     C
    model.layers.*.self_attn.q_proj.weight          blk.*.attn_q.weight       layers.*.attention.wq.weight       Q,C  rope=H
    model.layers.*.self_attn.k_proj.weight          blk.*.attn_k.weight       layers.*.attention.wk.weight       K,C  rope=G
    model.layers.*.self_attn.v_proj.weight          blk.*.attn_v.weight       layers.*.attention.wv.weight       K,C
    model.layers.*.self_attn.o_proj.weight          blk.*.attn_output.weight  layers.*.attention.wo.weight       C,Q
    model.layers.*.self_attn.q_proj.bias            blk.*.attn_q.bias         -                                  Q    rope=H if=qkv_bias
    model.layers.*.self_attn.k_proj.bias            blk.*.attn_k.bias         -                                  K    rope=G if=qkv_bias
    model.layers.*.self_attn.v_proj.bias            blk.*.attn_v.bias         -                                  K    if=qkv_bias
    model.layers.*.self_attn.o_proj.bias            blk.*.attn_output.bias    -                                  C    if=o_bias
    model.layers.*.self_attn.q_norm.weight          blk.*.attn_q_norm.weight  -                                  D    if=qk_norm
    model.layers.*.self_attn.k_norm.weight          blk.*.attn_k_norm.weight  -                                  D    if=qk_norm
    model.layers.*.post_attention_layernorm.weight  blk.*.ffn_norm.weight     layers.*.ffn_norm.weight           C
    model.layers.*.mlp.gate_proj.weight             blk.*.ffn_gate.weight     layers.*.feed_forward.w1.weight    F,C
    model.layers.*.mlp.up_proj.weight               blk.*.ffn_up.weight       layers.*.feed_forward.w3.weight    F,C
    model.layers.*.mlp.down_proj.weight             blk.*.ffn_down.weight     layers.*.feed_forward.w2.weight    C,F
    model.layers.*.mlp.gate_proj.bias               blk.*.ffn_gate.bias       -                                  F    if=mlp_bias
    model.layers.*.mlp.up_proj.bias                 blk.*.ffn_up.bias         -                                  F    if=mlp_bias
    model.layers.*.mlp.down_proj.bias               blk.*.ffn_down.bias       -                                  C    if=mlp_bias
    model.norm.weight                               output_norm.weight        norm.weight                        C
    lm_head.weight                                  output.weight             output.weight                      V,C  if=untied
''')
GPT2 = table('''
    transformer.wte.weight                          token_embd.weight         -                                  V,C
    transformer.wpe.weight                          position_embd.weight      -                                  P,C
    transformer.h.*.ln_1.weight                     blk.*.attn_norm.weight    -                                  C
    transformer.h.*.ln_1.bias                       blk.*.attn_norm.bias      -                                  C
    transformer.h.*.attn.c_attn.weight              blk.*.attn_qkv.weight     -                                  C,3C conv
    transformer.h.*.attn.c_attn.bias                blk.*.attn_qkv.bias       -                                  3C
    transformer.h.*.attn.c_proj.weight              blk.*.attn_output.weight  -                                  C,C  conv
    transformer.h.*.attn.c_proj.bias                blk.*.attn_output.bias    -                                  C
    transformer.h.*.ln_2.weight                     blk.*.ffn_norm.weight     -                                  C
    transformer.h.*.ln_2.bias                       blk.*.ffn_norm.bias       -                                  C
    transformer.h.*.mlp.c_fc.weight                 blk.*.ffn_up.weight       -                                  C,F  conv
    transformer.h.*.mlp.c_fc.bias                   blk.*.ffn_up.bias         -                                  F
    transformer.h.*.mlp.c_proj.weight               blk.*.ffn_down.weight     -                                  F,C  conv
    transformer.h.*.mlp.c_proj.bias                 blk.*.ffn_down.bias       -                                  C
    transformer.ln_f.weight                         output_norm.weight        -                                  C
    transformer.ln_f.bias                           output_norm.bias          -                                  C
    lm_head.weight                                  output.weight             -                                  V,C  if=untied
''')
# model_type: its class in transformers, its name in GGUF, and what a config.json that leaves a field out means
FAMILIES = {
    'llama': ('LlamaForCausalLM', 'llama', {}),
    'mistral': ('MistralForCausalLM', 'llama', {'num_key_value_heads': 8}),
    'qwen2': ('Qwen2ForCausalLM', 'qwen2', {'num_key_value_heads': 32}),
    'qwen3': ('Qwen3ForCausalLM', 'qwen3', {'num_key_value_heads': 32, 'head_dim': 128}),
    'smollm3': ('SmolLM3ForCausalLM', 'smollm3', {'num_key_value_heads': 4, 'tie_word_embeddings': True, 'rope_theta': 2e6}),
    'gpt2': ('GPT2LMHeadModel', 'gpt2', {'tie_word_embeddings': True, 'n_positions': 1024}),
}
# fields that would change the forward pass, and the values that do not
FIXED = {'hidden_act': ('silu',), 'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,), 'partial_rotary_factor': (1,)}
TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
PAIRED = ('llama', 'smollm3')        # GGUF architectures whose rotary pairs stand side by side, like llama2.c's
# Tensors that are no weights: masks and frequencies that older files carry along.
BUFFER = re.compile(r'(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq|freqs_cos|freqs_sin|freqs_cis)$')


def shown(value):
    """A value for an error text: short, and never a tour through a hostile structure."""
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(item, (int, float)) for item in value):
        return str(value)
    return repr(value)[:80] if value is None or isinstance(value, (str, int, float)) else type(value).__name__


KINDS = {bool: 'true or false', float: 'a float > 0', str: 'a text', list: 'a list', dict: 'an object'}
MISSING = object()


def field(source, key, where, default=MISSING, kind=int, least=1, most=2**31 - 1):
    """source[key], checked: the way to everything that a file says of itself. default stands for a field that is missing or null."""
    value = source.get(key)
    if value is None:
        refuse_if(default is MISSING, f'{where}: {key} is missing')
        return default
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 1.2e-38 < value < 3.4e38
    refuse_if(not good or (kind is int and not least <= value <= most),
              f'{where}: {key} is {shown(value)}, expected {KINDS.get(kind, f"a whole number in {least}..{most}")}')
    return value


def token_ids(config, key, where):
    """The ids of a special token, which is a number or a list of them; null and numbers below 0 stand for none."""
    value = config.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    refuse_if(value == [] or not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in listed),
              f'{where}: {key} is {shown(value)}, expected null, a whole number or a list of some')
    return [i for i in listed if i >= 0]


def describe(config, where):
    """The letters of the tables, the switches and the rotary frequencies of a config.json."""
    want = lambda key, *default, **more: field(config, key, where, *default, **more)
    kind = want('model_type', kind=str)
    refuse_if(kind not in FAMILIES, f'{where}: model_type is {shown(kind)}, expected {", ".join(FAMILIES)}')
    refuse_if(config.get('quantization_config') is not None, f'{where}: quantization_config is there, expected plain weights')
    for key, good in FIXED.items():
        refuse_if(config.get(key) not in (None, *good), f'{where}: {key} is {shown(config.get(key))}, expected {good[0]!r}')
    for key in TOKEN_IDS:
        token_ids(config, key, where)
    config = {**FAMILIES[kind][2], **{k: v for k, v in config.items() if v is not None}}
    s = {'V': want('vocab_size'), 'untied': not want('tie_word_embeddings', False, kind=bool)}
    if kind == 'gpt2':
        s.update(C=want('n_embd'), L=want('n_layer', most=1024), H=want('n_head'), P=want('n_positions', most=1 << 24))
        s.update(F=want('n_inner', 4 * s['C']), G=s['H'], eps=want('layer_norm_epsilon', 1e-5, kind=float))
    else:
        s.update(C=want('hidden_size'), L=want('num_hidden_layers', most=1024), H=want('num_attention_heads'))
        s.update(F=want('intermediate_size'), G=want('num_key_value_heads', s['H']), P=want('max_position_embeddings', 2048, most=1 << 24))
        bias = want('attention_bias', False, kind=bool)
        s.update(qkv_bias=bias or kind == 'qwen2', o_bias=bias and kind != 'qwen2', mlp_bias=want('mlp_bias', False, kind=bool))
        s.update(qk_norm=kind == 'qwen3', eps=want('rms_norm_eps', 1e-6, kind=float))
        s['theta'], s['llama3'] = rope(config, where)
        window, layers = config.get('sliding_window'), want('layer_types', [], kind=list)
        slides = want('use_sliding_window', kind == 'mistral', kind=bool) and window is not None and window != 0
        refuse_if(slides and want('sliding_window') < s['P'], f'{where}: sliding_window is {shown(window)}, expected null or at least the {s["P"]} positions')
        refuse_if(any(layer != 'full_attention' for layer in layers), f'{where}: layer_types is not full_attention throughout')
    refuse_if(not config.get('head_dim') and s['C'] % s['H'], f'{where}: hidden size is {s["C"]}, expected a multiple of the {s["H"]} heads')
    s['D'] = want('head_dim', s['C'] // s['H'])
    refuse_if(kind != 'gpt2' and (s['D'] % 2 or s['H'] % s['G']),
              f'{where}: {s["H"]} heads of {s["D"]}, {s["G"]} of keys and values: expected an even size and a divisor')
    s.update(Q=s['H'] * s['D'], K=s['G'] * s['D'])
    s['3C'] = 3 * s['C']
    return s


def rope(config, where):
    """Base and, if any, llama3 scaling of the rotary frequencies, from older and newer spellings."""
    theta, scaling = field(config, 'rope_theta', where, 10000.0, float), None
    for key in ('rope_scaling', 'rope_parameters'):
        inner, inside = field(config, key, where, {}, dict), f'{where}: {key}'
        kind = field(inner, 'rope_type', inside, field(inner, 'type', inside, 'default', str), str)
        refuse_if(kind not in ('default', 'llama3'), f'{where}: {key} is {shown(kind)}, expected the type default or llama3')
        theta = field(inner, 'rope_theta', inside, theta, float)
        if kind == 'llama3':
            scaling = {k: field(inner, k, inside, kind=float) for k in ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')}
            refuse_if(scaling['low_freq_factor'] >= scaling['high_freq_factor'], f'{where}: {key} wants low_freq_factor < high_freq_factor')
    return theta, scaling


def llama3_divisors(s, scaling):
    """What llama3 scaling divides the D/2 rotary frequencies by: 1 for short waves, factor for long ones, a blend between."""
    waves = 2 * math.pi * s['theta'] ** (np.arange(0, s['D'], 2) / s['D'])
    low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
    blend = np.clip((scaling['original_max_position_embeddings'] / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / scaling['factor'] + blend)).astype('<f4')


Weight = collections.namedtuple('Weight', 'row layer name shape tensor foreign read')   # read() gives Hugging Face's layout


def rows_of(config, s):
    return [row for row in (GPT2 if config['model_type'] == 'gpt2' else LLAMA) if not row.switch or s.get(row.switch)]


def at(name, layer):
    return name.replace('*', str(layer))


def to_halves(a, heads):
    """Rotary pairs side by side -> each head's first members, then its second ones. A view, of 4 axes."""
    a = a if a.ndim == 4 else a.reshape(heads, len(a) // heads // 2, 2, -1)
    return a.swapaxes(1, 2)


def to_pairs(a, heads):
    a = a if a.ndim == 4 else a.reshape(heads, 2, len(a) // heads // 2, -1)
    return a.swapaxes(1, 2)


# ==== tensors ===================================================================================
# load() gives the stored shape; dtype is a key of BYTES, kind what the user is told, e.g. Q4_1.
Tensor = collections.namedtuple('Tensor', 'shape dtype kind load')
# names: which column of the tables; paired, linear: how rope and conv rows are stored; files: texts to pass on by name;
# told, spelt: where config and tokenizer stand, for error texts
Checkpoint = collections.namedtuple('Checkpoint', 'kind config tensors names paired linear tokenizer files told spelt')


def bind(ckpt, where):
    """The weights that the config wants, in the order of the table, each with its tensor; and the tensors ignored."""
    config, tensors = dict(ckpt.config), dict(ckpt.tensors)
    s = describe(config, ckpt.told)
    ignored = [name for name in tensors if BUFFER.search(name)]
    prefix = 'transformer.' if ckpt.names == 'hf' and 'wte.weight' in tensors else ''      # GPT-2's own file leaves it out
    column = lambda row: getattr(row, ckpt.names)[len(prefix) if row.hf.startswith(prefix) else 0:]
    family = GPT2 if config['model_type'] == 'gpt2' else LLAMA
    head, embedding = column(family[-1]), column(family[0])
    if head in tensors and embedding in tensors and not s['untied']:
        refuse_if(not same(tensors[head], tensors[embedding]), f'{where}: {head} differs from {embedding}, expected the same as tie_word_embeddings is true')
        ignored.append(head)
    weights = []
    for row in rows_of(config, s):
        for layer in range(s['L'] if '*' in row.hf else 1):
            foreign, shape = at(column(row), layer), tuple(s[letter] for letter in row.shape)
            refuse_if(foreign not in tensors, f'{where}: tensor {foreign} is missing')
            t, stored = tensors[foreign], shape[::-1] if row.conv and ckpt.linear else shape
            refuse_if(tuple(t.shape) != stored, f'{where}: tensor {foreign} is {list(t.shape)}, the config wants {list(stored)}')
            refuse_if(t.dtype not in NUMPY, f'{where}: tensor {foreign} is {t.kind}, expected one of {", ".join(NUMPY)}')
            weights.append(Weight(row, layer, at(row.hf, layer), shape, t, foreign, reader(t, row, ckpt, s)))
    known = {w.foreign for w in weights}.union(ignored)
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise Refused(f'{where}: tensor {unknown[0][:200]} is no weight of a {config["model_type"]} model ({len(unknown)} unknown)')
    return weights, ignored, s


def reader(t, row, ckpt, s):
    if row.rope and ckpt.paired:
        return lambda: to_halves(t.load(), s[row.rope])
    return (lambda: t.load().T) if row.conv and ckpt.linear else t.load


def tie(config, tensors, embedding, head):
    """Formats without a flag: tied if there is no head, or if it is the embedding over again."""
    config['tie_word_embeddings'] = head not in tensors or (embedding in tensors and same(tensors[head], tensors[embedding]))


def same(a, b):
    """Equal matrices of weights, one in memory at a time."""
    return (a.dtype, tuple(a.shape)) == (b.dtype, tuple(b.shape)) and a.dtype in NUMPY and len(a.shape) == 2 and math.prod(a.shape) > 0 and digest(a.load()) == digest(b.load())


def chunks(array):
    """The array in order, PIECE values or so at a time, each contiguous."""
    step = max(1, PIECE // max(1, array[0].size if len(array) else 1))
    for i in range(0, len(array), step):
        yield np.ascontiguousarray(array[i:i + step]).reshape(-1)


def digest(array, have=None, want=None, name=''):
    h = hashlib.sha256()
    for piece in chunks(array):
        h.update(memoryview(cast(piece, have, want, name)).cast('B'))
    return h.digest()


def cast(x, have, want, name):
    """Rounds to nearest even. A value that leaves the range is an error, not an infinity."""
    if have == want:
        return x
    with np.errstate(over='ignore'):
        f = (x.astype('<u4') << 16).view('<f4') if have == 'BF16' else x.astype('<f4')
        if want == 'BF16':
            u = f.view('<u4')
            y = np.where(np.isnan(f), u >> 16 | 0x40, (u + 0x7FFF + (u >> 16 & 1)) >> 16).astype('<u2')
            infinite = (y & 0x7FFF) == 0x7F80
        else:
            y = f.astype(NUMPY[want])
            infinite = np.isinf(y)
    if infinite.any():
        worst = (f if have == 'BF16' else x)[infinite]
        worst = worst[np.isfinite(worst)]
        refuse_if(len(worst), f'{name}: {worst[0] if len(worst) else 0:g} is beyond the range of {want}; choose another --dtype')
    return y


# ==== files =====================================================================================

class File:
    """Reads with the file's size in view: no length in a file makes us ask for more than is there."""
    def __init__(self, path):
        self.path = path
        try:                                             # a FIFO is not waited for
            self.f = open(path, 'rb', opener=lambda name, flags: os.open(name, flags | getattr(os, 'O_NONBLOCK', 0)))
            status = os.fstat(self.f.fileno())
        except (OSError, ValueError) as e:
            raise Refused(f'{shown(path) if isinstance(e, ValueError) else path}: {getattr(e, "strerror", None) or e}')
        refuse_if(not stat.S_ISREG(status.st_mode), f'{path}: is a device or a pipe, expected a file')
        self.size = status.st_size

    def tell(self):
        return self.f.tell()

    def left(self):
        return self.size - self.f.tell()

    def take(self, n, what):
        refuse_if(not 0 <= n <= self.left(), f'{self.path}: {what} wants {n} bytes at {self.tell()}, the file has {self.left()} more')
        data = self.f.read(n)
        refuse_if(len(data) != n, f'{self.path}: ends in {what}; it was {self.size} bytes long')
        return data

    def unpack(self, form, what):
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    # for pickletools: at most what is there
    def read(self, n):
        return self.f.read(max(0, min(n, self.left())))

    def readline(self):
        return self.f.readline(MAX_TEXT)

    def tensor(self, offset, shape, dtype, kind=None):
        def load():
            out = np.empty(shape, NUMPY[dtype])
            fill(self.f, out, offset, self.path)
            return out
        refuse_if(offset + math.prod(shape) * BYTES[dtype] > self.size,
                  f'{self.path}: a tensor of {list(shape)} {dtype} at {offset} ends beyond the file ({self.size} bytes)')
        return Tensor(tuple(shape), dtype, kind or dtype, load)


def fill(stream, out, offset, where):
    """Fills an array from a stream, PIECE by PIECE; a stream may give fewer bytes than asked for."""
    view, done = memoryview(out.reshape(-1)).cast('B') if out.size else memoryview(b''), 0
    stream.seek(offset)
    while done < len(view):
        n = stream.readinto(view[done:done + 4 * PIECE])
        refuse_if(not n, f'{where}: ends {len(view) - done} bytes before a tensor does')
        done += n


def parse_json(data, where):
    def once(pairs):
        refuse_if(len({k for k, _ in pairs}) != len(pairs), f'{where}: a key stands there twice')
        return dict(pairs)

    def finite(text):
        refuse_if(not math.isfinite(float(text)), f'{where}: no JSON: the number {text[:40]}')
        return float(text)
    try:
        root = json.loads(data.decode('utf-8'), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
        if b'\\u' in data:
            json.dumps(root, ensure_ascii=False).encode('utf-8')           # fails on half a surrogate pair
    except (ValueError, RecursionError) as e:
        raise Refused(f'{where}: no JSON: {str(e)[:200]}')
    refuse_if(not isinstance(root, dict), f'{where}: {type(root).__name__}, expected a JSON object')
    return root


def read_text(path):
    f = File(path)
    refuse_if(f.size > MAX_TEXT, f'{path}: {f.size} bytes, expected at most {MAX_TEXT}')
    return f.take(f.size, 'the text')


def read_json(path):
    return parse_json(read_text(path), path)


# ==== safetensors ===============================================================================

def is_size(x, most=2**53):
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x <= most


def open_safetensors(path):
    """Eight bytes N, N bytes of JSON, the tensors end to end: none may overlap, none may leave a gap."""
    f = File(path)
    length, = f.unpack('<Q', 'the header length')
    refuse_if(length > min(f.left(), MAX_TEXT), f'{path}: header length is {length}, expected at most {min(f.left(), MAX_TEXT)}')
    header = parse_json(f.take(length, 'the header'), f'{path}: header')
    begin, tensors, places = 8 + length, {}, []
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        entry = entry if isinstance(entry, dict) else {}
        dtype, shape, place = entry.get('dtype'), entry.get('shape'), entry.get('data_offsets')
        refuse_if(not isinstance(dtype, str) or dtype not in BYTES, f'{path}: tensor {name[:200]} has dtype {shown(dtype)}, expected one of {", ".join(BYTES)}')
        refuse_if(not isinstance(shape, list) or len(shape) > 8 or not all(is_size(n) for n in shape),
                  f'{path}: tensor {name[:200]} has shape {shown(shape)}, expected at most 8 sizes')
        if not isinstance(place, list) or len(place) != 2 or not all(is_size(n) for n in place) or place[1] - place[0] != math.prod(shape) * BYTES[dtype]:
            raise Refused(f'{path}: tensor {name[:200]} has data_offsets {shown(place)}, expected {math.prod(shape) * BYTES[dtype]} bytes')
        places.append((*place, name))
        if begin + place[1] <= f.size:
            tensors[name] = f.tensor(begin + place[0], shape, dtype)
    end = 0
    for first, last, name in sorted(places):
        refuse_if(first != end, f'{path}: tensor {name[:200]} begins at byte {first} of the data, expected {end}')
        end = last
    refuse_if(begin + end != f.size, f'{path}: the tensors end at byte {begin + end}, the file at {f.size}')
    return tensors


# ==== PyTorch ===================================================================================
# A pickle is a program for a stack machine. Ours knows the opcodes that tensors need; the few names below may be
# "called" and make plain data. No Python object is imported, built or called by name, so a file cannot run code.

Global = collections.namedtuple('Global', 'name')
Storage = collections.namedtuple('Storage', 'dtype key numel')
Strided = collections.namedtuple('Strided', 'storage offset shape stride')
STORAGES = {'torch.DoubleStorage': 'F64', 'torch.FloatStorage': 'F32', 'torch.HalfStorage': 'F16', 'torch.BFloat16Storage': 'BF16', 'torch.LongStorage': 'I64',
            'torch.IntStorage': 'I32', 'torch.ShortStorage': 'I16', 'torch.CharStorage': 'I8', 'torch.ByteStorage': 'U8', 'torch.BoolStorage': 'BOOL'}
CALLS = {
    'torch._utils._rebuild_tensor': lambda storage, offset, shape, stride: strided(storage, offset, shape, stride),
    'torch._utils._rebuild_tensor_v2': lambda storage, offset, shape, stride, *rest: strided(storage, offset, shape, stride),
    'torch._utils._rebuild_parameter': lambda tensor, *rest: tensor,
    'collections.OrderedDict': lambda: {},
    'torch.Size': lambda sizes: sizes,
    'torch.device': lambda *which: which,
}
MARK = object()
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
VALUES = {'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'}


def strided(storage, offset, shape, stride):
    """A view of a storage. It must lie inside and must not hold more values than the storage."""
    good = isinstance(storage, Storage) and is_size(offset) and isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 8
    good = good and all(is_size(n) for n in shape + stride) and math.prod(shape) <= storage.numel
    refuse_if(not good or (math.prod(shape) and offset + sum((n - 1) * step for n, step in zip(shape, stride)) >= storage.numel), 'a tensor does not fit its storage')
    return Strided(storage, offset, shape, stride)


def storage_of(pid):
    refuse_if(not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage' and isinstance(pid[1], Global) and isinstance(pid[2], str) and is_size(pid[4])), 'a storage is not described by its type, key and size')
    refuse_if(pid[1].name not in STORAGES, f'a storage is {pid[1].name[:80]}, expected one of {", ".join(STORAGES)}')
    return Storage(STORAGES[pid[1].name], pid[2], pid[4])


def unpickle(stream, where):
    """Runs one pickle from the stream. Values are str, numbers, bool, None, tuple, list, dict and the kinds above."""
    try:
        machine = Machine()
        for op, argument, _ in pickletools.genops(stream):
            if op.name == 'STOP':
                return machine.pop()
            machine.step(op.name, argument)
    except Refused as e:
        raise Refused(f'{where}: {e}')
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error) as e:
        raise Refused(f'{where}: damaged pickle: {str(e)[:120] or type(e).__name__}')
    raise Refused(f'{where}: damaged pickle: no end')


class Machine:
    def __init__(self):
        self.stack, self.memo = [], {}

    def top(self, kind=object):
        value = self.stack[-1]
        refuse_if(value is MARK or not isinstance(value, kind), f'damaged pickle: {type(value).__name__} on the stack, expected {kind.__name__}')
        return value

    def pop(self, kind=object):
        self.top(kind)
        return self.stack.pop()

    def pop_marked(self):
        items = []
        while self.stack[-1] is not MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def set_items(self, items):
        for key, value in zip(items[::2], items[1::2]):
            refuse_if(not isinstance(key, (str, int)), f'a dict has a key of type {type(key).__name__}, expected text or a number')
            self.top(dict)[key] = value

    def reduce(self):
        arguments, function = self.pop(tuple), self.pop(Global)
        refuse_if(function.name not in CALLS, f'the pickle calls {function.name[:80]}, which is no part of a weights file')
        return CALLS[function.name](*arguments)

    def step(self, name, argument):
        push = self.stack.append
        if name in VALUES:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name == 'MARK':
            push(MARK)
        elif name in ('BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            self.memo[len(self.memo) if argument is None else argument] = self.top()
        elif name in ('BINGET', 'LONG_BINGET'):
            push(self.memo[argument])
        elif name == 'TUPLE':
            push(tuple(self.pop_marked()))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            push(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ('APPEND', 'APPENDS'):
            items = [self.pop()] if name == 'APPEND' else self.pop_marked()
            self.top(list).extend(items)
        elif name in ('SETITEM', 'SETITEMS'):
            self.set_items([self.pop(), self.pop()][::-1] if name == 'SETITEM' else self.pop_marked())
        elif name == 'GLOBAL':
            push(Global(argument.replace(' ', '.', 1)))
        elif name == 'STACK_GLOBAL':
            attribute, module = self.pop(str), self.pop(str)
            push(Global(f'{module}.{attribute}'))
        elif name == 'BINPERSID':
            push(storage_of(self.pop()))
        elif name == 'REDUCE':
            push(self.reduce())
        elif name == 'BUILD':
            self.pop()                                   # attributes of an OrderedDict: of no use here
        else:
            refuse_if(name not in ('PROTO', 'FRAME'), f'the pickle has the opcode {name}, which is no part of a weights file')


def stored_tensor(view, load_range, where):
    """The tensor behind a Strided; load_range(first, n) gives n values of its storage."""
    n = math.prod(view.shape)
    extent = 1 + sum((m - 1) * step for m, step in zip(view.shape, view.stride)) if n else 0

    def load():
        flat = load_range(view.offset, extent)
        return np.lib.stride_tricks.as_strided(flat, view.shape, [step * flat.itemsize for step in view.stride], writeable=False)
    return Tensor(view.shape, view.storage.dtype, view.storage.dtype, load)


# What zipfile and zlib raise for files that are not as they should be.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, ArithmeticError, RuntimeError)


def torch_zip(path):
    try:
        archive = zipfile.ZipFile(path)
        members = {info.filename: info for info in archive.infolist()}
    except DAMAGE as e:
        raise Refused(f'{path}: damaged zip: {str(e)[:120] or type(e).__name__}')
    pickles = [name for name in members if name == 'data.pkl' or name.endswith('/data.pkl')]
    refuse_if(len(pickles) != 1, f'{path}: {len(pickles)} entries data.pkl, expected one: no file of torch.save')
    root = pickles[0][:-len('data.pkl')]

    def read(name, use):
        refuse_if(members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
                  f'{path}: entry {name[:200]} is compressed by method {members[name].compress_type}, expected stored (0) or deflated (8)')
        try:
            with archive.open(members[name]) as stream:
                return use(stream)
        except DAMAGE as e:
            raise Refused(f'{path}: entry {name[:200]} is damaged: {str(e)[:120] or type(e).__name__}')

    def text(name):
        refuse_if(members[name].file_size > MAX_TEXT, f'{path}: entry {name[:200]} has {members[name].file_size} bytes, expected at most {MAX_TEXT}')
        return read(name, lambda stream: stream.read())

    refuse_if(root + 'byteorder' in members and text(root + 'byteorder') != b'little', f'{path}: byteorder is not "little"')

    def tensor(view):
        storage, name = view.storage, f'{root}data/{view.storage.key}'
        refuse_if(name not in members or members[name].file_size != storage.numel * BYTES[storage.dtype],
                  f'{path}: entry {name[:200]} is not the {storage.numel * BYTES[storage.dtype]} bytes that its tensor wants')

        def load_range(first, n):
            out = np.empty(n, NUMPY[storage.dtype])
            read(name, lambda stream: fill(stream, out, first * out.itemsize, path))
            return out
        return stored_tensor(view, load_range, path)
    return unpickle(io.BytesIO(text(pickles[0])), path), tensor


def torch_legacy(path):
    """Before torch 1.6: five pickles (magic, version, system, object, keys), then each storage: its size and its bytes."""
    f = File(path)
    magic, version, system, root, keys = (unpickle(f, path) for _ in range(5))
    refuse_if(magic != 0x1950A86A20F9469CFC6C or version != 1001 or not isinstance(system, dict) or system.get('little_endian') is not True,
              f'{path}: no file of torch.save (magic number, version 1001 and little endian expected)')
    refuse_if(not isinstance(keys, list) or not all(isinstance(key, str) for key in keys), f'{path}: the list of storages is damaged')
    dtypes, walk, seen = {}, [root], set()
    while walk:                                          # the dtype of a storage stands with its tensors only
        value = walk.pop()
        if isinstance(value, Strided):
            dtypes[value.storage.key] = value.storage
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            walk.extend(value.values())
    places = {}
    for key in keys:
        numel, = f.unpack('<q', f'the size of storage {key[:40]}')
        storage = dtypes.get(key)
        refuse_if(storage is None or numel != storage.numel,
                  f'{path}: storage {key[:40]} has {numel} values, its tensors want {storage.numel if storage else "none"}')
        places[key] = f.tell()
        refuse_if(numel * BYTES[storage.dtype] > f.left(),
                  f'{path}: storage {key[:40]} wants {numel * BYTES[storage.dtype]} bytes, the file has {f.left()} more')
        f.f.seek(numel * BYTES[storage.dtype], os.SEEK_CUR)

    def tensor(view):
        storage = view.storage
        refuse_if(storage.key not in places, f'{path}: storage {storage.key[:40]} is missing')
        return stored_tensor(view, lambda first, n: f.tensor(places[storage.key] + first * BYTES[storage.dtype], (n,), storage.dtype).load(), path)
    return root, tensor


def open_torch(path):
    """The tensors of a state dict by name, and the model_args beside it if it is a training checkpoint."""
    root, tensor = torch_zip(path) if zipfile.is_zipfile(path) else torch_legacy(path)
    refuse_if(not isinstance(root, dict), f'{path}: holds {type(root).__name__}, expected a state dict')
    inner = next((root[key] for key in ('model', 'state_dict') if isinstance(root.get(key), dict)), root)
    tensors = {}
    for name, view in inner.items():
        refuse_if(not isinstance(view, Strided), f'{path}: entry {str(name)[:80]!r} is {type(view).__name__}, expected a tensor')
        name = str(name)[len('_orig_mod.'):] if str(name).startswith('_orig_mod.') else str(name)     # torch.compile's prefix
        refuse_if(name in tensors, f'{path}: tensor {name[:80]} stands there twice')
        tensors[name] = tensor(view)
    return tensors, root.get('model_args')


def open_training_checkpoint(path, tensors, args):
    """llama2.c's and nanoGPT's model_args as a config.json."""
    refuse_if(not isinstance(args, dict), f'{path}: no config.json beside it and no model_args in it')
    if 'n_embd' in args:
        config = {'model_type': 'gpt2', 'vocab_size': args.get('vocab_size'), 'n_positions': args.get('block_size'), 'n_embd': args.get('n_embd'), 'n_layer': args.get('n_layer'),
                  'n_head': args.get('n_head'), 'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5, 'bos_token_id': None, 'eos_token_id': None}
        tie(config, tensors, 'transformer.wte.weight', 'lm_head.weight')
        return Checkpoint('nanoGPT', config, tensors, 'hf', False, True, None, {}, path, path)
    gate = tensors.get('layers.0.feed_forward.w1.weight')
    config = llama2c_config(args.get('dim'), gate.shape[0] if gate and gate.shape else None, args.get('n_layers'), args.get('n_heads'),
                            args.get('n_kv_heads'), args.get('vocab_size'), args.get('max_seq_len'))
    tie(config, tensors, 'tok_embeddings.weight', 'output.weight')
    return Checkpoint('llama2.c .pt', config, tensors, 'meta', True, False, None, {}, path, path)


# ==== Hugging Face directories ==================================================================

SIDECARS = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json', 'chat_template.jinja', 'chat_template.json',
            'added_tokens.json', 'vocab.json', 'merges.txt', 'tokenizer.model')


def read_sidecars(path):
    return {name: read_text(os.path.join(path, name)) for name in SIDECARS if os.path.lexists(os.path.join(path, name))}


def open_directory(path, only=None):
    """The first kind of weights that is there, or the one file named."""
    told, spelt = os.path.join(path, 'config.json'), os.path.join(path, 'tokenizer.json')
    config, files = read_json(told), read_sidecars(path)
    tensors, kinds = {}, [only] if only else ['model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json']
    found = next((name for name in kinds if os.path.lexists(os.path.join(path, name))), None)
    refuse_if(not found, f'{path}: none of {", ".join(kinds)}')
    where, index = os.path.join(path, found), None
    if found.endswith('.index.json'):
        index = field(read_json(where), 'weight_map', where, kind=dict)
        refuse_if(not index or not all(isinstance(name, str) and name and os.path.basename(name) == name for name in index.values()),
                  f'{where}: weight_map is no table of files beside it')
    for shard in sorted(set(index.values())) if index else [found]:
        file = os.path.join(path, shard)
        refuse_if(index and not os.path.isfile(file), f'{where}: weight_map names {shown(shard)}, which is no file beside it')
        part = open_safetensors(file) if '.safetensors' in found else open_torch(file)[0]
        refuse_if(index and any(index.get(name) != shard for name in part), f'{file}: holds other tensors than {found} says')
        tensors.update(part)
    refuse_if(index and len(tensors) != len(index), f'{where}: names {len(index or ())} tensors, the files hold {len(tensors)}')
    tokenizer = parse_json(files['tokenizer.json'], spelt) if 'tokenizer.json' in files else None
    return Checkpoint(f'Hugging Face, {found}', config, tensors, 'hf', False, False, tokenizer, files, told, spelt)


# ==== llama2.c and llm.c ========================================================================

def llama2c_config(dim, hidden, layers, heads, kv_heads, vocab, length, tied=True):
    # run.c stops at token 1, which separates the stories it was trained on; Llama 2's own end is 2.
    return {'model_type': 'llama', 'vocab_size': vocab, 'hidden_size': dim, 'intermediate_size': hidden, 'num_hidden_layers': layers, 'num_attention_heads': heads,
            'num_key_value_heads': kv_heads, 'max_position_embeddings': length, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'tie_word_embeddings': tied,
            'bos_token_id': 1, 'eos_token_id': [1, 2]}


# The order of the files, by llama2.c's names; "freqs" are tables that newer programs compute themselves.
V0 = ['tok_embeddings', 'attention_norm', 'wq', 'wk', 'wv', 'wo', 'ffn_norm', 'w1', 'w2', 'w3', 'norm', 'freqs_cos', 'freqs_sin', 'output']
V1 = ['attention_norm', 'ffn_norm', 'norm', 'tok_embeddings', 'wq', 'wk', 'wv', 'wo', 'w1', 'w2', 'w3', 'output']


def llama2c_parts(order, config, s):
    """(name, shape) of the file's tensors in order, the layers of one kind together."""
    rows = {row.meta.split('.')[-2]: row for row in rows_of(config, s) if row.meta != '-'}
    for part in order:
        if part.startswith('freqs'):
            yield part, (s['P'], s['D'] // 2)
        elif part in rows:
            for layer in range(s['L'] if '*' in rows[part].meta else 1):
                yield at(rows[part].meta, layer), tuple(s[letter] for letter in rows[part].shape)


def open_llama2c(path):
    f = File(path)
    magic, version = struct.unpack('<Ii', f.take(8, 'the header'))
    if magic == 0x616B3432:
        refuse_if(version not in (1, 2), f'{path}: llama2.c version {version}, expected 0, 1 or 2')
        *numbers, shared = f.unpack('<7iB', 'the header')
        group = f.unpack('<i', 'the group size')[0] if version == 2 else 0
        order, begin = V1, 256
    else:
        f.f.seek(0)
        version, group, order, begin = 0, 0, V0, 28
        numbers = list(f.unpack('<7i', 'the header'))
        shared, numbers[5] = numbers[5] > 0, abs(numbers[5])     # a negative vocabulary size says that the head is there
    dim, hidden, layers, heads, kv_heads, vocab, length = numbers
    config = llama2c_config(dim, hidden, layers, heads, kv_heads, vocab, length, bool(shared))
    s = describe(config, f'{path}: no llama2.c file')
    offset, places = begin, []
    for name, shape in llama2c_parts(order, config, s):
        quantised = version == 2 and len(shape) == 2
        refuse_if(quantised and (group < 1 or math.prod(shape) % group), f'{path}: group size is {group}, expected a divisor of the size of {list(shape)}')
        size = math.prod(shape) * (1 if quantised else 4) + (math.prod(shape) // group * 4 if quantised else 0)
        places.append((name, shape, offset, quantised))
        offset += size
    refuse_if(offset != f.size, f'{path}: a llama2.c v{version} model of {numbers} has {offset} bytes, the file has {f.size}')
    tensors = {name: grouped_int8(f, place, shape, group) if quantised else f.tensor(place, shape, 'F32') for name, shape, place, quantised in places}
    return Checkpoint(f'llama2.c v{version}', config, tensors, 'meta', True, False, None, {}, path, path)


def grouped_int8(f, offset, shape, group):
    """llama2.c v2: int8 values, then one float per group of them."""
    n = math.prod(shape)

    def load():
        out, step = np.empty(n, '<f4'), max(1, PIECE // group) * group
        for i in range(0, n, step):
            m = min(step, n - i)
            q, scale = np.empty(m, 'i1'), np.empty(m // group, '<f4')
            fill(f.f, q, offset + i, f.path)
            fill(f.f, scale, offset + n + i // group * 4, f.path)
            with np.errstate(all='ignore'):
                out[i:i + m] = (q.reshape(-1, group) * scale[:, None]).reshape(-1)
        return out.reshape(shape)
    return Tensor(shape, 'F32', f'int8 in groups of {group}', load)


def open_llmc(path):
    """llm.c's GPT-2: 256 ints, then the tensors in the order of our table, the layers of one kind together."""
    f = File(path)
    header = f.unpack('<256i', 'the header')
    version, length, vocab, layers, heads, dim, padded = header[1:8]
    refuse_if(version not in (3, 5), f'{path}: llm.c version {version}, expected 3 (f32) or 5 (bf16)')
    dtype = 'F32' if version == 3 else 'BF16'
    config = {'model_type': 'gpt2', 'vocab_size': vocab, 'n_positions': length, 'n_embd': dim, 'n_layer': layers, 'n_head': heads, 'activation_function': 'gelu_new',
              'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True, 'bos_token_id': vocab - 1, 'eos_token_id': vocab - 1}
    s = describe(config, path)
    refuse_if(not vocab <= padded < vocab + 4096, f'{path}: padded vocabulary is {padded}, expected {vocab} or little more')
    offset, tensors = 1024, {}
    for row in rows_of(config, s):
        shape = tuple(s[letter] for letter in row.shape)[::-1 if row.conv else 1]
        for layer in range(s['L'] if '*' in row.hf else 1):
            tensors[at(row.hf, layer)] = f.tensor(offset, shape, dtype)
            offset += math.prod((padded, dim) if row is GPT2[0] else shape) * BYTES[dtype]
    refuse_if(offset != f.size, f'{path}: such a model has {offset} bytes, the file has {f.size}')
    return Checkpoint(f'llm.c GPT-2 {dtype}', config, tensors, 'hf', False, True, None, {}, path, path)


def read_llama2c_tokenizer(path, vocab):
    """max length, then (score, length, bytes) of each piece; a space stands for SentencePiece's U+2581."""
    f = File(path)
    f.unpack('<i', 'the longest piece')
    pieces, scores = [], []
    while f.left():
        score, n = f.unpack('<fi', 'a piece')
        try:
            pieces.append(f.take(n, f'piece {len(pieces)}').decode('utf-8').replace(' ', '\u2581'))
        except UnicodeDecodeError:
            raise Refused(f'{path}: piece {len(pieces)} is no UTF-8')
        scores.append(score)
    refuse_if(len(pieces) != vocab, f'{path}: {len(pieces)} pieces, the model has {vocab}')
    pieces[1:3] = [piece.strip('\n') for piece in pieces[1:3]]             # the exporter puts them on lines of their own
    types = [2, 3, 3][:vocab] + [6 if re.fullmatch('<0x[0-9A-F]{2}>', piece) else 1 for piece in pieces[3:]]
    return sentencepiece_tokenizer(pieces, scores, types, {'bos': 1, 'eos': 2, 'unk': 0}, True, True, path)


# ==== GGUF ======================================================================================

GGUF_TYPES = {0: 'F32', 1: 'F16', 30: 'BF16'}              # those that are plain values; all others are blocks
GGUF_SCALARS = ['<B', '<b', '<H', '<h', '<I', '<i', '<f', '<?', None, None, '<Q', '<q', '<d']      # 8: text, 9: list
ALIGNMENT = 32
# Fields of an architecture that we read, and those that may stand there with the one value that changes nothing.
GGUF_FIELDS = ('block_count', 'context_length', 'embedding_length', 'feed_forward_length', 'attention.head_count', 'attention.head_count_kv', 'vocab_size',
               'attention.layer_norm_rms_epsilon', 'attention.layer_norm_epsilon', 'attention.key_length', 'attention.value_length', 'rope.freq_base', 'rope.dimension_count')
GGUF_NEUTRAL = {'expert_count': 0, 'expert_used_count': 0, 'rope.scaling.type': 'none', 'attention.causal': True, 'attention.sliding_window': 0, 'use_parallel_residual': False,
                'rope.scaling.factor': 1.0, 'rope.scale_linear': 1.0, 'tensor_data_layout': 'Meta AI original pth'}


def gguf_value(f, kind, inside=False):
    if kind == 8:
        length, = f.unpack('<Q', 'the length of a text')
        try:
            return f.take(length, 'a text').decode('utf-8')
        except UnicodeDecodeError:
            raise Refused(f'{f.path}: a text that ends at {f.tell()} is no UTF-8')
    if kind == 9 and not inside:
        kind, n = f.unpack('<IQ', 'a list')
        refuse_if(kind > 12 or n > min(f.left(), 1 << 24),
                  f'{f.path}: a list of {n} values of type {kind} at {f.tell()}, expected at most {min(f.left(), 1 << 24)}')
        if kind not in (8, 9):
            form = GGUF_SCALARS[kind]
            return list(struct.unpack(f'<{n}{form[1]}', f.take(n * struct.calcsize(form), 'a list')))
        return [gguf_value(f, kind, True) for _ in range(n)]
    refuse_if(kind > 12 or kind == 9, f'{f.path}: type {kind} of a value at {f.tell()}, expected 0..12 and no list of lists')
    return f.unpack(GGUF_SCALARS[kind], 'a value')[0]


def read_gguf(path):
    """The metadata, and the tensors with their shapes in our order (GGUF lists the fastest axis first)."""
    f = File(path)
    magic, version = struct.unpack('<4sI', f.take(8, 'the header'))
    refuse_if(magic != b'GGUF' or version not in (2, 3), f'{path}: GGUF version {version}, expected 2 or 3, little endian')
    n_tensors, n_fields = f.unpack('<QQ', 'the header')
    meta, infos = {}, []
    for _ in range(n_fields):                              # each takes bytes, so a false count ends with the file
        key = gguf_value(f, 8)
        refuse_if(key in meta, f'{path}: field {key[:80]} stands there twice')
        meta[key] = gguf_value(f, f.unpack('<I', 'the type of a value')[0])
    for _ in range(n_tensors):
        name, axes = gguf_value(f, 8), f.unpack('<I', 'the number of axes')[0]
        refuse_if(not 1 <= axes <= 4, f'{path}: tensor {name[:80]} has {axes} axes, expected 1 to 4')
        infos.append((name, f.unpack(f'<{axes}Q', 'a shape')[::-1], *f.unpack('<IQ', 'the type and place of a tensor')))
    align = meta.get('general.alignment', ALIGNMENT)
    refuse_if(not is_size(align, 1 << 20) or align < 1, f'{path}: general.alignment is {shown(align)}, expected a size')
    begin = -(-f.tell() // align) * align
    tensors, end, last = {}, 0, ''
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        refuse_if(name in tensors, f'{path}: tensor {name[:80]} stands there twice')
        refuse_if(offset < end or offset % align,
                  f'{path}: tensor {name[:80]} begins at byte {offset} of the data, expected a multiple of {align} after {last[:80]}, which ends at {end}')
        tensors[name], size = gguf_tensor(f, name, shape, kind, begin + offset)
        end, last = offset + size, name
    return meta, tensors


def gguf_tensor(f, name, shape, kind, offset):
    """A tensor and its size in bytes."""
    if kind in GGUF_TYPES:
        return f.tensor(offset, shape, GGUF_TYPES[kind]), math.prod(shape) * BYTES[GGUF_TYPES[kind]]
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise Refused(f'{f.path}: tensor {name[:80]} is stored in blocks of GGML type {kind}; reading them needs the package gguf: pip install gguf')
    try:
        kind = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if block > 1:
            gguf.quants.dequantize(np.zeros((1, size), 'u1'), kind)
    except (ValueError, KeyError, NotImplementedError):
        block = 0
    refuse_if(block <= 1, f'{f.path}: tensor {name[:80]} has GGML type {getattr(kind, "name", kind)}, which the package gguf does not dequantise')
    refuse_if(shape[-1] % block, f'{f.path}: tensor {name[:80]} has rows of {shape[-1]} values, expected a multiple of the {block} of a {kind.name} block')
    rows, width = math.prod(shape[:-1]), shape[-1] // block * size
    refuse_if(offset + rows * width > f.size, f'{f.path}: tensor {name[:80]} ends at byte {offset + rows * width}, the file at {f.size}')

    def load():
        out, step = np.empty((rows, shape[-1]), '<f4'), max(1, PIECE // 4 // max(1, shape[-1]))
        for i in range(0, rows, step):
            raw = np.empty((min(step, rows - i), width), 'u1')
            fill(f.f, raw, offset + i * width, f.path)
            with np.errstate(all='ignore'):
                out[i:i + step] = gguf.quants.dequantize(raw, kind)
        return out.reshape(shape)
    return Tensor(shape, 'F32', kind.name, load), rows * width


def open_gguf(path):
    meta, tensors = read_gguf(path)
    arch = meta.get('general.architecture')
    refuse_if(arch not in [family[1] for family in FAMILIES.values()],
              f'{path}: general.architecture is {shown(arch)}, expected {", ".join(sorted({family[1] for family in FAMILIES.values()}))}')
    refuse_if(meta.get('split.count', 0) not in (0, 1), f'{path}: one of {shown(meta.get("split.count"))} parts; join them first (llama-gguf-split --merge)')
    refuse_if(not tensors, f'{path}: holds a vocabulary and no tensors; give it as --tokenizer')
    for key, value in meta.items():
        name = key[len(arch) + 1:]
        refuse_if(key.startswith(arch + '.') and name not in GGUF_FIELDS and not (name in GGUF_NEUTRAL and value == GGUF_NEUTRAL[name]),
                  f'{path}: {key[:80]} is {shown(value)}, which is not known here')
    get = lambda name: meta.get(f'{arch}.{name}')
    embedding = tensors.get('token_embd.weight')
    config = {'model_type': arch, 'vocab_size': embedding.shape[0] if embedding else None}
    refuse_if(get('vocab_size') not in (None, config['vocab_size']),
              f'{path}: {arch}.vocab_size is {shown(get("vocab_size"))}, the embedding has {config["vocab_size"]} rows')
    if arch == 'gpt2':
        config.update(n_positions=get('context_length'), n_embd=get('embedding_length'), n_layer=get('block_count'), n_head=get('attention.head_count'), n_inner=get('feed_forward_length'),
                      activation_function='gelu_new', layer_norm_epsilon=tidy(get('attention.layer_norm_epsilon')))
    else:
        either = lambda name, other: other if get(name) is None else get(name)
        head = either('attention.key_length', get('rope.dimension_count'))
        config.update(hidden_size=get('embedding_length'), intermediate_size=get('feed_forward_length'), num_hidden_layers=get('block_count'), num_attention_heads=get('attention.head_count'),
                      num_key_value_heads=either('attention.head_count_kv', get('attention.head_count')), head_dim=head, max_position_embeddings=get('context_length'), hidden_act='silu',
                      rms_norm_eps=tidy(get('attention.layer_norm_rms_epsilon')), rope_theta=tidy(either('rope.freq_base', 10000.0)),
                      attention_bias='blk.0.attn_q.bias' in tensors and arch != 'qwen2', mlp_bias='blk.0.ffn_gate.bias' in tensors)
        refuse_if(any(get(key) not in (None, head) for key in ('attention.value_length',
                  'rope.dimension_count')), f'{path}: key, value and rotary size differ, expected heads of one size')
        if arch == 'smollm3':
            config['no_rope_layer_interval'] = 4            # no field says so; llama.cpp has it built in
        gguf_rope(config, tensors.pop('rope_freqs.weight', None), path)
    bos, eos, eot, pad = (meta.get(f'tokenizer.ggml.{name}_token_id') for name in ('bos', 'eos', 'eot', 'padding'))
    config.update(bos_token_id=bos, eos_token_id=eos if eot in (None, eos) else eot if eos is None else [eos, eot], pad_token_id=pad)
    tie(config, tensors, 'token_embd.weight', 'output.weight')
    tokenizer, files = gguf_tokenizer(meta, path)
    return Checkpoint(f'GGUF, {arch}', config, tensors, 'gguf', arch in PAIRED, True, tokenizer, files, path, path)


def tidy(x):
    """A float that went through 32 bits, in its shortest decimal form."""
    return float(str(np.float32(x))) if isinstance(x, float) else x


def gguf_rope(config, divisors, path):
    """llama3 scaling is stored as its effect, D/2 divisors; the parameters that make just these are the published ones."""
    if divisors is None:
        return
    s = describe(config, path)
    values = divisors.load() if (divisors.dtype, divisors.shape) == ('F32', (s['D'] // 2,)) else np.zeros(0, '<f4')
    scaling = {'rope_type': 'llama3', 'factor': tidy(float(values.max(initial=1))), 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
    refuse_if(values.shape != (s['D'] // 2,) or not np.allclose(values, llama3_divisors(s, scaling), rtol=1e-4),
              f'{path}: rope_freqs.weight is not what llama3 scaling from 8192 positions gives')
    config['rope_scaling'] = scaling


# ==== tokenizers ================================================================================

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = LLAMA3_SPLIT.replace('{1,3}', '')


def byte_level(prefix, trim, regex):
    return {'type': 'ByteLevel', 'add_prefix_space': prefix, 'trim_offsets': trim, 'use_regex': regex}


def split(pattern, trim):
    return {'type': 'Sequence', 'pretokenizers': [{'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}, byte_level(False, trim, False)]}


# GGUF's name of a pre-tokenizer: the pre-tokenizer, the normalizer, ignore_merges, and whether text begins with BOS
PRE = {
    'gpt-2': (byte_level(False, True, True), None, False, False),
    'smollm': ({'type': 'Sequence', 'pretokenizers': [{'type': 'Digits', 'individual_digits': True}, byte_level(False, True, True)]}, None, False, False),
    'llama-bpe': (split(LLAMA3_SPLIT, True), None, True, True),
    'smaug-bpe': (split(LLAMA3_SPLIT, True), None, True, False),
    'qwen2': (split(QWEN2_SPLIT, False), {'type': 'NFC'}, False, False),
}


# tiktoken's encodings by their number of ranks: the pattern (None: ByteLevel's own, GPT-2's) and the special tokens
CL100K_SPLIT = LLAMA3_SPLIT.replace(r'|\s*[\r\n]+', r'|\s+\z|\s*[\r\n]+')
O200K_SPLIT = '|'.join([r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                        r'\p{N}{1,3}', r' ?[^\s\p{L}\p{N}]+[\r\n/]*', r'\s*[\r\n]+', r'\s+(?!\S)', r'\s+'])
LLAMA3_NAMES = ['begin_of_text', 'end_of_text', 'reserved_special_token_0', 'reserved_special_token_1', 'finetune_right_pad_id', 'reserved_special_token_2',
                'start_header_id', 'end_header_id', 'eom_id', 'eot_id', 'python_tag', *(f'reserved_special_token_{i}' for i in range(3, 248))]
RANKS = {
    50256: ('r50k', None, {50256: 'endoftext'}),
    50280: ('p50k', None, {50256: 'endoftext'}),
    100256: ('cl100k', CL100K_SPLIT, {100257: 'endoftext', 100258: 'fim_prefix', 100259: 'fim_middle', 100260: 'fim_suffix', 100276: 'endofprompt'}),
    199998: ('o200k', O200K_SPLIT, {199999: 'endoftext', 200018: 'endofprompt'}),
    128000: ('Llama 3', LLAMA3_SPLIT, dict(enumerate(LLAMA3_NAMES, 128000))),
}
RANK_LINE = re.compile(rb'([A-Za-z0-9+/]+={0,2}) ([0-9]{1,7})\r?')
MAX_RANK_BYTES = 1024
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_CHARS = {b: chr(b) for b in PRINTABLE}                            # GPT-2's: bytes without a printable character from U+0100 on
BYTE_CHARS.update((b, chr(256 + i)) for i, b in enumerate(b for b in range(256) if b not in BYTE_CHARS))


def read_ranks(path):
    """The tokens of a .tiktoken file, bytes to rank."""
    ranks, taken = {}, set()
    for n, line in enumerate(read_text(path).rstrip(b'\n').split(b'\n'), 1):
        match = RANK_LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b''
        except ValueError:
            token = b''
        refuse_if(not 0 < len(token) <= MAX_RANK_BYTES, f'{path}: line {n} is not "base64 rank" of a token of at most {MAX_RANK_BYTES} bytes')
        refuse_if(token in ranks or int(match[2]) in taken, f'{path}: line {n} has a token or rank that is there already')
        ranks[token] = int(match[2])
        taken.add(ranks[token])
    return ranks


def split_by_ranks(token, ranks):
    """The two parts that tiktoken joins last to make the token: neighbours that spell a token join, the lowest rank first and of equal ones the
    leftmost. None if it never gets there."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, math.inf) for a, b in zip(parts, parts[1:])]
        i = min(range(len(joined)), key=joined.__getitem__)
        if joined[i] == math.inf:
            return None
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def ranks_tokenizer(path):
    """tokenizer.json of a .tiktoken file. Ranks know no merges: two neighbours join if they spell a token. A token can only come from the two parts
    that its own bytes are left as just before, so these give its merge."""
    ranks = read_ranks(path)
    refuse_if(len(ranks) not in RANKS, f'{path}: has {len(ranks)} ranks, expected ' + ', '.join(f'{n} ({name})' for n, (name, _, _) in RANKS.items()))
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    refuse_if(missing, f'{path}: byte 0x{missing[0] if missing else 0:02X} has no rank')
    name, pattern, names = RANKS[len(ranks)]
    text = lambda token: ''.join(BYTE_CHARS[b] for b in token)
    ordered = sorted(ranks, key=ranks.get)
    parts = [split_by_ranks(token, ranks) for token in ordered if len(token) > 1]
    size = max(max(names), ranks[ordered[-1]]) + 1
    pieces, types = [''] * size, [5] * size
    for token in ordered:
        pieces[ranks[token]], types[ranks[token]] = text(token), 1
    for i, special in names.items():
        pieces[i] = f'<|{special}|>'
    bos = 128000 if name == 'Llama 3' else None
    pipeline = {'pre_tokenizer': split(pattern, True) if pattern else byte_level(False, True, True), 'decoder': byte_level(True, True, True)}
    model = {'ignore_merges': True, 'merges': [[text(left), text(right)] for left, right in filter(None, parts)]}
    root = tokenizer_json(pieces, types, {'bos': bos}, bos is not None, pipeline, model)
    root['added_tokens'] = [{'id': i, 'content': pieces[i], 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True} for i in sorted(names)]
    return root


def check_pieces(pieces, types, special, where):
    refuse_if(len(types) != len(pieces) or not all(is_size(t) for t in types), f'{where}: {len(types)} types of tokens for {len(pieces)} tokens')
    twice = [piece for piece, n in collections.Counter(pieces).items() if n > 1]
    refuse_if(twice or '' in pieces, f'{where}: token {shown(twice[0] if twice else "")} stands there twice or is empty')
    for key, token in special.items():
        refuse_if(token is not None and not is_size(token, len(pieces) - 1), f'{where}: the token {key} is {shown(token)}, expected less than {len(pieces)}')


def tokenizer_json(pieces, types, special, add_bos, pipeline, model):
    """The common frame. types are GGUF's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    added = [{'id': i, 'content': piece, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': t != 4}
             for i, (piece, t) in enumerate(zip(pieces, types)) if t in (2, 3, 4)]
    post = None
    if add_bos and special.get('bos') is not None:
        name = pieces[special['bos']]
        first = lambda n, letter: [{'SpecialToken': {'id': name, 'type_id': n}}, {'Sequence': {'id': letter, 'type_id': n}}]
        post = {'type': 'TemplateProcessing', 'single': first(0, 'A'), 'pair': first(0, 'A') + first(1, 'B'),
                'special_tokens': {name: {'id': name, 'ids': [special['bos']], 'tokens': [name]}}}
    root = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': None, 'pre_tokenizer': None, 'post_processor': post, 'decoder': None}
    frame = {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False}
    root.update(pipeline)
    root['model'] = {**frame, **model, 'vocab': {piece: i for i, (piece, t) in enumerate(zip(pieces, types)) if t != 5}, 'merges': model['merges']}
    return root


def sentencepiece_tokenizer(pieces, scores, types, special, add_bos, prefix, where):
    """Llama 2's form: text with U+2581 for spaces, merged by score, bytes for what has no piece."""
    check_pieces(pieces, types, special, where)
    refuse_if(len(scores) != len(pieces), f'{where}: {len(scores)} scores for {len(pieces)} tokens')
    space = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'}
    decoders = [{'type': 'Replace', 'pattern': {'String': '\u2581'}, 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'}]
    pipeline = {'normalizer': {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': '\u2581'}, space]} if prefix else None,
                'pre_tokenizer': None if prefix else {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': 'never', 'split': False},
                'decoder': {'type': 'Sequence', 'decoders': decoders + ([{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if prefix else [])}}
    model = {'unk_token': pieces[special['unk']] if special.get('unk') is not None else None, 'fuse_unk': True,
             'byte_fallback': sum(t == 6 for t in types) == 256, 'merges': merges_by_score(pieces, scores, types, where)}
    return tokenizer_json(pieces, types, special, add_bos, pipeline, model)


def merges_by_score(pieces, scores, types, where):
    """Every way to make a piece of two others, best score first; where scores are equal, lower ids first."""
    normal = {piece: i for i, (piece, t) in enumerate(zip(pieces, types)) if t in (1, 4) and ' ' not in piece}
    found = []
    for piece, n in normal.items():
        refuse_if(len(piece) > 1024, f'{where}: a token of {len(piece)} characters, expected at most 1024')
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in normal and piece[i:] in normal]
        found.extend((-scores[n], normal[left], normal[right]) for left, right in cuts)
    return [f'{pieces[left]} {pieces[right]}' for _, left, right in sorted(found)]


def gguf_tokenizer(meta, where):
    """tokenizer.json and tokenizer_config.json from a GGUF file's metadata; None if it has none."""
    get = lambda key, *default, **more: field(meta, 'tokenizer.ggml.' + key, where, *default, **more)
    kind = get('model', None, kind=str)
    if kind is None:
        return None, {}
    pieces = get('tokens', [], kind=list)
    refuse_if(kind not in ('llama', 'gpt2') or not all(isinstance(piece, str) for piece in pieces),
              f'{where}: tokenizer.ggml.model is {shown(kind)}, expected llama or gpt2 with a list of tokens')
    for key in ('add_eos_token', 'precompiled_charsmap'):
        value = meta.get(f'tokenizer.ggml.{key}')
        refuse_if(value, f'{where}: tokenizer.ggml.{key} is {shown(value)}, which has no place here; give the model\'s tokenizer.json as --tokenizer')
    types = get('token_type', [1] * len(pieces), kind=list)
    special = {key: get(f'{name}_token_id', None, least=0) for key, name in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding'))}
    if kind == 'llama':
        scores = get('scores', [], kind=list)
        refuse_if(not all(isinstance(x, float) for x in scores), f'{where}: tokenizer.ggml.scores is no list of floats')
        add_bos = get('add_bos_token', True, kind=bool)
        root = sentencepiece_tokenizer(pieces, scores, types, special, add_bos, get('add_space_prefix', True, kind=bool), where)
    else:
        pre, merges = get('pre', '', kind=str), get('merges', kind=list)
        refuse_if(pre not in PRE, f'{where}: tokenizer.ggml.pre is {shown(pre)}, expected {", ".join(PRE)}; give the model\'s tokenizer.json as --tokenizer')
        refuse_if(not all(isinstance(m, str) and m.count(' ') == 1 for m in merges),
                  f'{where}: tokenizer.ggml.merges is no list of pairs')
        check_pieces(pieces, types, special, where)
        splitter, normalizer, ignore, bos = PRE[pre]
        add_bos = get('add_bos_token', bos, kind=bool)
        pipeline = {'normalizer': normalizer, 'pre_tokenizer': splitter, 'decoder': byte_level(True, True, True)}
        root = tokenizer_json(pieces, types, special, add_bos, pipeline, {'ignore_merges': ignore, 'merges': merges})
    return root, {'tokenizer_config.json': to_json(tokenizer_config(root, special, pieces, add_bos, meta.get('tokenizer.chat_template')))}


def tokenizer_config(root, special, pieces, add_bos, template=None):
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False, 'add_bos_token': add_bos, 'add_eos_token': False}
    config.update({f'{key}_token': pieces[token] for key, token in special.items() if token is not None})
    if isinstance(template, str):
        config['chat_template'] = template
    return config


def open_tokenizer(path, vocab):
    """tokenizer.json and the files to go with it, from any of the forms."""
    if os.path.isdir(path):
        files = read_sidecars(path)
        files.pop('generation_config.json', None)
        refuse_if('tokenizer.json' not in files, f'{path}: has no tokenizer.json')
        return parse_json(files['tokenizer.json'], f'{path}/tokenizer.json'), files
    start = File(path).read(4)
    if start == b'GGUF':
        root, files = gguf_tokenizer(read_gguf(path)[0], path)
        refuse_if(root is None, f'{path}: holds no tokenizer')
        return root, files
    if start.lstrip()[:1] == b'{':
        return read_json(path), {'tokenizer.json': read_text(path)}
    root = read_llama2c_tokenizer(path, vocab)
    special = {'bos': 1, 'eos': 2, 'unk': 0}
    return root, {'tokenizer_config.json': to_json(tokenizer_config(root, special, list(root['model']['vocab']), True))}


def vocabulary(root, vocab, where):
    """(tokens by id, types, merges as pairs) of a tokenizer.json; ids without a token are unused."""
    model, inside = field(root, 'model', where, kind=dict), f'{where}: model'
    kind = field(model, 'type', inside, 'BPE', str)
    refuse_if(kind != 'BPE', f'{inside}: type is {shown(kind)}, expected BPE')
    vocab_json, merges = field(model, 'vocab', inside, kind=dict), field(model, 'merges', inside, kind=list)
    fallback, unknown = field(model, 'byte_fallback', inside, False, bool), field(model, 'unk_token', inside, None, str)
    added = field(root, 'added_tokens', where, [], list)
    refuse_if(not all(isinstance(t, dict) for t in added), f'{where}: added_tokens is no list of objects')
    listed = [*vocab_json.items(), *((t.get('content'), t.get('id')) for t in added)]
    refuse_if(not all(isinstance(piece, str) and is_size(i, vocab - 1) for piece, i in listed), f'{where}: a token has no id below the vocabulary size {vocab}')
    pieces, types = [f'[PAD{i}]' for i in range(vocab)], [5] * vocab
    for piece, i in listed:
        pieces[i], types[i] = piece, 6 if fallback and re.fullmatch('<0x[0-9A-F]{2}>', piece) else 1
    for t in added:
        special = field(t, 'special', f'{where}: added token {shown(t["content"])}', False, bool)
        types[t['id']] = 2 if t['content'] == unknown else 3 if special else 4
    pairs = [m.split(' ') if isinstance(m, str) else m for m in merges]
    refuse_if(not all(isinstance(m, list) and len(m) == 2 and all(isinstance(side, str) for side in m) for m in pairs), f'{where}: merges are no pairs')
    return pieces, types, pairs


def scores_of(pieces, types, pairs):
    """Scores that give the merges their order back: minus the place of the piece; pieces whose merges mix have one place."""
    place, order = {}, []
    for piece in (left + right for left, right in pairs):
        if piece not in place:
            place[piece] = len(order)
            order.append(piece)
        for later in reversed(order):
            if place[later] <= place[piece]:
                break
            place[later] = place[piece]
    return [float(-place.get(piece, len(order) + i)) if t == 1 else 0.0 for i, (piece, t) in enumerate(zip(pieces, types))]


def begins_with_bos(root):
    post = root.get('post_processor')
    parts = post.get('processors') if isinstance(post, dict) and post.get('type') == 'Sequence' else [post]
    templates = [p.get('single') for p in (parts if isinstance(parts, list) else []) if isinstance(p, dict) and p.get('type') == 'TemplateProcessing']
    return any(isinstance(t, list) and t and isinstance(t[0], dict) and 'SpecialToken' in t[0] for t in templates)


# ==== writing ===================================================================================

class Output:
    """Files in new folders beside OUT, which nobody else writes to; commit() renames them to their places, and the folders go."""
    def __init__(self):
        self.staged = []

    def stage(self, path):
        path = os.path.normpath(path)
        refuse_if(os.path.lexists(path), f'{path}: exists already; remove it or choose another name')
        refuse_if(not os.path.isdir(os.path.dirname(path) or '.'), f'{path}: the directory {os.path.dirname(path)} does not exist')
        folder = tempfile.mkdtemp(prefix=os.path.basename(path)[:200] + '.tmp-', dir=os.path.dirname(path) or '.')
        self.staged.append((os.path.join(folder, os.path.basename(path)), path))
        return self.staged[-1][0]

    def commit(self):
        for _, path in self.staged:
            refuse_if(os.path.lexists(path), f'{path}: appeared meanwhile; nothing written')
        for temporary, path in self.staged[::-1]:
            os.rename(temporary, path)

    def discard(self):
        for temporary, _ in self.staged:
            shutil.rmtree(os.path.dirname(temporary), ignore_errors=True)


class Progress:
    """One line on stderr: done, rate, time left; rewritten on a terminal, else every few seconds."""
    def __init__(self, verb, total):
        self.verb, self.total, self.done, self.start, self.last, self.tty = verb, max(1, total), 0, time.monotonic(), time.monotonic(), sys.stderr.isatty()

    def tick(self, n=0, end=False):
        self.done += n
        now = time.monotonic()
        if end or now - self.last >= (0.2 if self.tty else 5) and now - self.start > 0.2:
            self.last, rate = now, self.done / max(1e-9, now - self.start)
            line = f'{self.verb} {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB ({min(100, 100 * self.done // self.total)} %), {rate / 1e6:.0f} MB/s, {max(0, self.total - self.done) / max(rate, 1):.0f} s left'
            sys.stderr.write(f'\r{line}\x1b[K' + ('\n' if end else '') if self.tty else line + '\n')
            sys.stderr.flush()


@contextlib.contextmanager
def synced(path):
    with open(path, 'xb') as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


def save(path, data):
    with synced(path) as f:
        f.write(data)


def to_json(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode('utf-8')


def put(f, array, have, want, name, progress):
    """Appends a tensor in the type that is wanted; returns its size."""
    size = 0
    for piece in chunks(array):
        size += f.write(memoryview(cast(piece, have, want, name)).cast('B'))
        progress.tick(piece.nbytes)
    return size


def plan(weights, dtype, vectors=None):
    """The type of each weight in the output."""
    return [vectors if vectors and len(w.shape) == 1 else dtype or {'F64': 'F32'}.get(w.tensor.dtype, w.tensor.dtype) for w in weights]


def size_of(w, dtype):
    return math.prod(w.shape) * BYTES[dtype]


def write_hf(path, ckpt, weights, s, args, progress):
    dtypes = plan(weights, args.dtype)
    os.mkdir(path)
    shards, sizes = [[]], [0]
    for w, dtype in zip(weights, dtypes):
        if args.max_shard_size and shards[-1] and sizes[-1] + size_of(w, dtype) > args.max_shard_size:
            shards.append([])
            sizes.append(0)
        shards[-1].append((w, dtype))
        sizes[-1] += size_of(w, dtype)
    names = ['model.safetensors'] if len(shards) == 1 else [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
    for name, shard in zip(names, shards):
        header, place = {'__metadata__': {'format': 'pt'}}, 0
        for w, dtype in shard:
            header[w.name] = {'dtype': dtype, 'shape': list(w.shape), 'data_offsets': [place, place + size_of(w, dtype)]}
            place += size_of(w, dtype)
        text = json.dumps(header, separators=(',', ':')).encode('utf-8')
        text += b' ' * (-len(text) % 8)
        with synced(os.path.join(path, name)) as f:
            f.write(struct.pack('<Q', len(text)) + text)
            for w, dtype in shard:
                put(f, w.read(), w.tensor.dtype, dtype, w.name, progress)
    if len(shards) > 1:
        where = {w.name: name for name, shard in zip(names, shards) for w, _ in shard}
        save(os.path.join(path, 'model.safetensors.index.json'), to_json({'metadata': {'total_size': sum(sizes)}, 'weight_map': where}))
    config = {'architectures': [FAMILIES[ckpt.config['model_type']][0]], **ckpt.config}
    torch_dtype = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}[dtypes[0]]
    config['dtype' if 'dtype' in config else 'torch_dtype'] = torch_dtype
    save(os.path.join(path, 'config.json'), to_json(config))
    files = dict(ckpt.files)
    if ckpt.tokenizer is not None:
        files.setdefault('tokenizer.json', to_json(ckpt.tokenizer))
    files.setdefault('generation_config.json', to_json({key: config[key] for key in TOKEN_IDS if token_ids(config, key, ckpt.told)}))
    for name, data in files.items():
        save(os.path.join(path, name), data)


def write_llama2c(path, ckpt, weights, s, args, progress):
    """Version 0, which run.c reads. It has no room for another architecture, so everything else is refused."""
    kind = ckpt.config['model_type']
    wrong = [text for text, bad in (('model_type ' + kind, kind not in ('llama', 'mistral')), ('biases', s.get('qkv_bias') or s.get('mlp_bias')), ('llama3 rope scaling', s.get('llama3')),
                                    (f'rope_theta {s.get("theta", 1e4):g}, not 10000', s.get('theta', 1e4) != 1e4), (f'rms_norm_eps {s["eps"]:g}, not 1e-5', abs(s['eps'] - 1e-5) > 1e-9),
                                    ('heads that are not hidden_size / num_attention_heads wide', s['Q'] != s['C']), (f'--dtype {args.dtype}, not f32', args.dtype not in (None, 'F32'))) if bad]
    refuse_if(wrong, f'llama2.c\'s format has no room for {", ".join(wrong)}')
    frequencies, step = 10000.0 ** (-np.arange(0, s['D'], 2) / s['D']), max(1, PIECE // s['D'])
    by_name = {at(w.row.meta, w.layer): w for w in weights}
    with synced(path) as f:
        f.write(struct.pack('<7i', s['C'], s['F'], s['L'], s['H'], s['G'], -s['V'] if s['untied'] else s['V'], s['P']))
        for name, shape in llama2c_parts(V0, ckpt.config, s):
            if name.startswith('freqs'):
                for i in range(0, s['P'], step):
                    angles = np.outer(np.arange(i, min(i + step, s['P'])), frequencies)
                    f.write((np.cos if name == 'freqs_cos' else np.sin)(angles).astype('<f4').tobytes())
            else:
                w = by_name[name]
                put(f, to_pairs(w.read(), s[w.row.rope]) if w.row.rope else w.read(), w.tensor.dtype, 'F32', w.name, progress)


def llama2c_tokenizer(root, vocab, where):
    """tokenizer.bin, or None for a tokenizer that it cannot hold."""
    if not root['model'].get('byte_fallback'):
        return None
    pieces, types, pairs = vocabulary(root, vocab, where)
    scores = scores_of(pieces, types, pairs)
    texts = [(f'\n{piece}\n' if t == 3 and i in (1, 2) else piece.replace('\u2581', ' ')).encode('utf-8') for i, (piece, t) in enumerate(zip(pieces, types))]
    return struct.pack('<i', max(map(len, texts))) + b''.join(struct.pack('<fi', score, len(text)) + text for score, text in zip(scores, texts))


def gguf_pack(value):
    """A typed value. Texts, flags and lists tell their type; whole numbers are u32 and floats f32."""
    if isinstance(value, str):
        data = value.encode('utf-8')
        return struct.pack('<IQ', 8, len(data)) + data
    if isinstance(value, bool):
        return struct.pack('<I?', 7, value)
    if isinstance(value, list):
        if isinstance(value[0], str):
            return struct.pack('<IIQ', 9, 8, len(value)) + b''.join(gguf_pack(item)[4:] for item in value)
        kind = 5 if isinstance(value[0], int) else 6
        return struct.pack('<IIQ', 9, kind, len(value)) + struct.pack(f'<{len(value)}{GGUF_SCALARS[kind][1]}', *value)
    return struct.pack('<II', 4, value) if isinstance(value, int) else struct.pack('<If', 6, value)


def gguf_vocabulary(ckpt, vocab, where):
    """The tokenizer as metadata."""
    root, config = ckpt.tokenizer, ckpt.config
    if root is None:
        return {}
    pieces, types, pairs = vocabulary(root, vocab, where)
    meta = {'tokens': pieces, 'token_type': types, 'add_bos_token': begins_with_bos(root)}
    if '"ByteFallback"' in json.dumps(root.get('decoder')):
        pre = field(root, 'pre_tokenizer', where, {}, dict)
        prefix = '"Prepend"' in json.dumps(root.get('normalizer')) or (pre.get('type') == 'Metaspace' and pre.get('prepend_scheme') != 'never')
        meta.update(model='llama', pre='default', scores=scores_of(pieces, types, pairs), add_space_prefix=prefix)
    else:
        plain = lambda splitter: json.dumps(splitter, sort_keys=True).replace('"trim_offsets": true', '"trim_offsets": false')      # offsets do not matter here
        pre = [name for name, entry in PRE.items() if plain(entry[0]) == plain(root.get('pre_tokenizer')) and entry[1] == root.get('normalizer')]
        refuse_if(not pre, f'{where}: its pre_tokenizer and normalizer have no name in GGUF, expected those of {", ".join(PRE)}')
        meta.update(model='gpt2', pre=pre[0], merges=[f'{left} {right}' for left, right in pairs])
    bos, ends, pad = (token_ids(config, key, ckpt.told) for key in TOKEN_IDS)
    unknown = root['model'].get('unk_token')
    tokens = {'bos': bos[:1], 'eos': ends[:1], 'eot': ends[1:][-1:], 'padding': pad[:1], 'unknown': [pieces.index(unknown)] if unknown in pieces else []}
    meta.update({f'{key}_token_id': token for key, ids in tokens.items() for token in ids if token < vocab})
    meta = {f'tokenizer.ggml.{key}': value for key, value in meta.items() if value != []}
    template = parse_json(ckpt.files['tokenizer_config.json'], f'{ckpt.spelt}: its tokenizer_config.json').get('chat_template') if 'tokenizer_config.json' in ckpt.files else None
    template = ckpt.files['chat_template.jinja'].decode('utf-8', 'replace') if 'chat_template.jinja' in ckpt.files else template
    return {**meta, 'tokenizer.chat_template': template} if isinstance(template, str) else meta


def write_gguf(path, ckpt, weights, s, args, progress):
    arch = FAMILIES[ckpt.config['model_type']][1]
    dtypes = plan(weights, args.dtype, 'F32')                          # llama.cpp wants vectors in f32
    code = {dtype: number for number, dtype in GGUF_TYPES.items()}
    meta = {'block_count': s['L'], 'context_length': s['P'], 'embedding_length': s['C'], 'feed_forward_length': s['F'], 'attention.head_count': s['H']}
    if arch == 'gpt2':
        meta['attention.layer_norm_epsilon'] = s['eps']
    else:
        meta.update({'attention.head_count_kv': s['G'], 'attention.layer_norm_rms_epsilon': s['eps'], 'attention.key_length': s['D'], 'attention.value_length': s['D'],
                     'rope.freq_base': s['theta'], 'rope.dimension_count': s['D'], 'vocab_size': s['V']})
    refuse_if(arch == 'smollm3' and smollm3_interval(ckpt.config, s['L'], ckpt.told) != 4, f'{ckpt.told}: no_rope_layers is not every fourth layer, which is all that GGUF readers know of smollm3')
    matrix = next(dtype for w, dtype in zip(weights, dtypes) if len(w.shape) > 1)
    meta = {'general.architecture': arch, 'general.file_type': {'F32': 0, 'F16': 1, 'BF16': 32}[matrix], **{f'{arch}.{key}': value for key, value in meta.items()}}
    meta.update(gguf_vocabulary(ckpt, s['V'], ckpt.spelt))
    entries = [(at(w.row.gguf, w.layer), w.shape[::-1] if not w.row.conv else w.shape, dtype, w) for w, dtype in zip(weights, dtypes)]
    if s.get('llama3'):
        entries.append(('rope_freqs.weight', (s['D'] // 2,), 'F32', None))
    head, offset = struct.pack('<4sIQQ', b'GGUF', 3, len(entries), len(meta)), 0
    head += b''.join(gguf_pack(key)[4:] + gguf_pack(value) for key, value in meta.items())
    for name, shape, dtype, _ in entries:
        head += gguf_pack(name)[4:] + struct.pack(f'<I{len(shape)}QIQ', len(shape), *shape, code[dtype], offset)
        offset += -(-math.prod(shape) * BYTES[dtype] // ALIGNMENT) * ALIGNMENT
    with synced(path) as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for name, shape, dtype, w in entries:
            if w is None:
                array, have = llama3_divisors(s, s['llama3']), 'F32'
            else:
                array, have = w.read(), w.tensor.dtype
                array = to_pairs(array, s[w.row.rope]) if w.row.rope and arch in PAIRED else array.T if w.row.conv else array
            f.write(bytes(-put(f, array, have, dtype, w.name if w else name, progress) % ALIGNMENT))


def smollm3_interval(config, layers, where):
    listed = config.get('no_rope_layers')
    if listed is None:
        return field(config, 'no_rope_layer_interval', where, 4)
    return next((n for n in range(1, layers + 2) if listed == [int((i + 1) % n != 0) for i in range(layers)]), 0)


# ==== the command ===============================================================================

def open_any(path):
    """Tells the format by what the file holds, not by its name."""
    if os.path.isdir(path):
        return open_directory(path)
    f = File(path)
    start = f.read(9)
    beside = os.path.isfile(os.path.join(os.path.dirname(path), 'config.json'))
    if start[:4] == b'GGUF':
        return open_gguf(path)
    if start[:4] == struct.pack('<I', 20240326):
        return open_llmc(path)
    if zipfile.is_zipfile(path) or start[:1] == b'\x80' and start[2:4] in (b'\x8a\n', b'.\x00') or path.endswith(('.pt', '.pth')):
        if beside:
            return open_directory(os.path.dirname(path) or '.', os.path.basename(path))
        return open_training_checkpoint(path, *open_torch(path))
    if path.endswith('.safetensors') or start[8:9] == b'{':
        refuse_if(not beside, f'{path}: no config.json beside it')
        return open_directory(os.path.dirname(path) or '.', os.path.basename(path))
    return open_llama2c(path)


def report(ckpt, weights, ignored, path):
    """What became what, the layers of one kind in one line."""
    total = sum(math.prod(w.shape) for w in weights)
    print(f'{path}: {ckpt.kind}; {ckpt.config["model_type"]}, {len(weights)} tensors, {total} weights')
    groups = collections.OrderedDict()
    for w in weights:
        groups.setdefault((w.row, w.shape, w.tensor.kind), []).append(w)
    for (row, shape, kind), members in groups.items():
        foreign = re.sub(r'\d+', '*', members[0].foreign, count=1) if '*' in row.hf else members[0].foreign
        how = ', rows un-permuted' if row.rope and ckpt.paired else ', transposed' if row.conv and ckpt.linear else ''
        print(f'  {foreign} -> {row.hf} {list(shape)} {kind}{how}' + (f' x{len(members)}' if '*' in row.hf else ''))
    if ignored:
        print(f'  ignored: {ignored[0]}' + (f' and {len(ignored) - 1} more' if len(ignored) > 1 else '') + ' (buffers and copies)')
    print('  tokenizer: ' + (f'{len(ckpt.tokenizer.get("model", {}).get("vocab", {}))} tokens' if ckpt.tokenizer else 'none'))


def verify(path, weights, dtypes, tokenizer):
    """Reads the output like any input and compares every weight with the source, bit by bit in the output's type."""
    back = open_any(path)
    found, _, s = bind(back, path)
    refuse_if([w.name for w in found] != [w.name for w in weights], f'{path}: reads back as other tensors')
    progress = Progress('verified', sum(size_of(w, dtype) for w, dtype in zip(weights, dtypes)))
    for w, b, dtype in zip(weights, found, dtypes):
        refuse_if(b.tensor.dtype != dtype or digest(w.read(), w.tensor.dtype, dtype, w.name) != digest(b.read()),
                  f'{path}: {w.name} reads back with other values')
        progress.tick(size_of(w, dtype))
    progress.tick(end=True)
    if tokenizer is not None and back.tokenizer is not None:
        (tokens, _, merges), (back_tokens, _, back_merges) = (vocabulary(t, s['V'], path) for t in (tokenizer, back.tokenizer))
        refuse_if(tokens != back_tokens or merges != back_merges, f'{path}: the tokenizer reads back with other tokens or merges')
    print(f'verified: {len(found)} tensors read back bit by bit')


WRITERS = {'hf': write_hf, 'llama2c': write_llama2c, 'gguf': write_gguf}


def is_ranks(path):
    return os.path.isfile(path) and RANK_LINE.fullmatch(File(path).read(2048).split(b'\n')[0]) is not None


def convert_ranks(args):
    root, output = ranks_tokenizer(args.input), Output()
    print(f'{args.input}: tiktoken; {len(root["model"]["vocab"])} ranks, {len(root["model"]["merges"])} merges, {len(root["added_tokens"])} special tokens')
    try:
        folder = output.stage(args.output)
        os.mkdir(folder)
        save(os.path.join(folder, 'tokenizer.json'), to_json(root))
        output.commit()
        print(f'wrote {os.path.normpath(args.output)}')
    finally:
        output.discard()


def convert(args):
    if is_ranks(args.input):
        return convert_ranks(args)
    ckpt = open_any(args.input)
    weights, ignored, s = bind(ckpt, args.input)
    if args.tokenizer:
        root, files = open_tokenizer(args.tokenizer, s['V'])
        keep = {name: data for name, data in ckpt.files.items() if name == 'generation_config.json'}
        ckpt = ckpt._replace(tokenizer=root, files={**keep, **files}, spelt=args.tokenizer)
    if ckpt.tokenizer is not None:
        vocabulary(ckpt.tokenizer, s['V'], ckpt.spelt)
    report(ckpt, weights, ignored, args.input)
    output = Output()
    dtypes = plan(weights, 'F32' if args.to == 'llama2c' else args.dtype, 'F32' if args.to == 'gguf' else None)
    progress = Progress('written', sum(math.prod(w.shape) * BYTES[w.tensor.dtype] for w in weights))
    try:
        path = output.stage(args.output)
        WRITERS[args.to](path, ckpt, weights, s, args, progress)
        progress.tick(end=True)
        if args.to == 'llama2c' and ckpt.tokenizer is not None:
            data = llama2c_tokenizer(ckpt.tokenizer, s['V'], ckpt.spelt)
            if data is None:
                print('  tokenizer: not written, llama2.c knows SentencePiece with byte fallback only')
            else:
                save(output.stage(os.path.splitext(args.output)[0] + '.tokenizer.bin'), data)
        if args.verify:
            verify(path, weights, dtypes, ckpt.tokenizer)
        names = [final for _, final in output.staged]
        output.commit()
        print('wrote ' + ', '.join(names))
    finally:
        output.discard()


def shard_size(text):
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?', text, re.IGNORECASE)
    if not match or not 1 <= float(match[1]) * 1000 ** ' KMGT'.index(match[2].upper() or ' ') < 2**63:
        raise argparse.ArgumentTypeError(f'{text!r}, expected a size such as 5GB or 500MB')
    return int(float(match[1]) * 1000 ** ' KMGT'.index(match[2].upper() or ' '))


def main(argv=None):
    parser = argparse.ArgumentParser(prog='convert_weights.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', metavar='IN', help='directory or file')
    parser.add_argument('output', metavar='OUT', help='directory (hf) or file; must not exist')
    parser.add_argument('--tokenizer', metavar='T', help='tokenizer.json, a directory with one, tokenizer.bin, or a GGUF file')
    parser.add_argument('--to', choices=WRITERS, default='hf', help='default: hf')
    parser.add_argument('--dtype', choices=('f32', 'f16', 'bf16'), type=str.lower, help='default: as the weights are')
    parser.add_argument('--max-shard-size', metavar='S', type=shard_size, help='of model-*.safetensors, e.g. 5GB; default: one file')
    parser.add_argument('--verify', action='store_true', help='read the output back and compare')
    args = parser.parse_args(argv)
    args.dtype = args.dtype and args.dtype.upper()
    if args.max_shard_size and args.to != 'hf':
        parser.error('--max-shard-size is for --to hf')
    for name in ('SIGTERM', 'SIGHUP'):                                  # so that the temporary files go
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        convert(args)
    except Refused as e:
        sys.exit(f'convert_weights.py: {e}')
    except OSError as e:
        sys.exit(f'convert_weights.py: {e.filename or args.output}: {e.strerror or e}')
    except RecursionError:
        sys.exit(f'convert_weights.py: {args.input}: JSON of too many levels')
    except MemoryError:
        sys.exit('convert_weights.py: out of memory')
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == '__main__':
    sys.stdout, sys.stderr = (stream or open(os.devnull, 'w') for stream in (sys.stdout, sys.stderr))       # None if closed
    sys.stdout.reconfigure(errors='backslashreplace')
    try:
        main()
    finally:
        try:
            sys.stdout.flush()
        except OSError as e:                                            # would come again, as a traceback, at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f'convert_weights.py: standard output: {e.strerror}', file=sys.stderr)
