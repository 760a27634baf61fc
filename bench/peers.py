#!/usr/bin/env python3
"""The rivals of the benches, each measured in turns with ours: A B A B, in the lines of bench.h.

    python3 bench/peers.py [THREADS [PART]]         THREADS 0, the default: one, then one per processor
    python3 bench/peers.py --cuda [PART]            PyTorch on the device, beside build/cuda/bench_* (make bench-cuda)
    python3 bench/peers.py --proof [warm|dry]       PyTorch's figures for make gpu-proof, all in this process; warm: only compiles,
                                                    for the next process; dry: only names them
    python3 bench/peers.py --ratio [PART]           do sampler and trainer agree, ours and TRL's: a table
                                                    (make bench-ratio); PART: of a model's name
    python3 bench/peers.py --write LOG RESULTS      puts the lines of LOG as tables into the generated part of RESULTS

What is not installed is skipped by name: torch (eager and compiled), transformers, trl with datasets,
tokenizers, tiktoken, numpy, llama-cpp-python (with make real-model). PEER_DIR=DIR: checkouts DIR/llama2.c and
DIR/llm.c, built here with -Ofast -march=native -fopenmp. Models and sizes are those of bench.h, weights are
random, training is float32 with AdamW. numpy's OpenBLAS gets the kernels that are its fastest here, of all
that it has for this CPU. Each rival is a process of its own: a run is asked for by a line and answered by its
figure, between two runs of ours. ROUNDS=n in the environment: how many of these, 3 by default.

On the device everything is measured in f32, TF32 and bf16. In bf16 PyTorch has the best of it: its products and attention get
bf16 tensors and leave some, its generation holds bf16 weights; training is float32 under autocast. Attention is
scaled_dot_product_attention, which is FlashAttention in bf16; generation has a static cache, for which it compiles.
"""
import ctypes
import functools
import glob
import importlib.metadata
import importlib.util
import os
import re
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = int(os.environ.get('ROUNDS', '3'))
PROMPTS, GENERATIONS, LENGTH = 16, 8, 64                    # of bench_grpo
HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(HERE), 'build')
MADE = os.path.join(BUILD, 'bench')
DATA = os.path.join(os.path.dirname(os.path.dirname(HERE)), 'shared', 'data')
FIELDS = 'gpt2 layers hidden heads inner vocab tied context sequences length kv_heads device'.split()
TEXTS = {'shakespeare': 'corpora/tinyshakespeare/input.txt', 'multilingual': 'vectors/multilingual/inputs.json',
         'code': os.path.join(os.path.dirname(HERE), 'thinktuning.h')}


class Skip(Exception):
    """Why a rival is left out."""


def shapes():
    """The rows of bench_models in bench.h."""
    text = open(os.path.join(HERE, 'bench.h'), encoding='utf-8').read()
    rows = re.findall(r'^    \{"(\w+)", ([\d, ]+)\},$', text, re.M)
    return {name: dict(zip(FIELDS, map(int, numbers.split(',')))) for name, numbers in rows}


def need(*packages):
    for package in packages:
        if not importlib.util.find_spec(package):
            raise Skip(f'{package} is not installed')


def checkout(name, file):
    """Compiles the program of a checkout of PEER_DIR; its path."""
    source = os.path.join(os.environ.get('PEER_DIR', '/nowhere'), name)
    if not os.path.isdir(source):
        raise Skip(f'no {name} in PEER_DIR')
    program = os.path.join(MADE, name)
    subprocess.run(['cc', '-Ofast', '-fno-finite-math-only', '-march=native', '-fopenmp', '-DOMP', '-I', source, os.path.join(source, file), '-o', program, '-lm'],
                   check=True, stderr=subprocess.DEVNULL)
    return program


def random_floats(file, n):
    import numpy
    numbers = numpy.random.default_rng(1)
    while n > 0:
        some = min(n, 1 << 24)
        file.write((numbers.standard_normal(some, dtype=numpy.float32) * numpy.float32(0.02)).tobytes())
        n -= some


def made(name, write):
    """A file of MADE, written once."""
    path = os.path.join(MADE, name)
    if not os.path.exists(path):
        need('numpy')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + '.part', 'wb') as file:
            write(file)
        os.replace(path + '.part', path)
    return path


# ==== numpy =====================================================================================
def numpy_probe():
    """GFLOP/s of one thread and the name of the kernels, of the OpenBLAS that numpy brings."""
    need('numpy')
    import numpy
    libraries = glob.glob(os.path.dirname(numpy.__file__) + '.libs/*openblas*')
    if not libraries:
        raise Skip('numpy multiplies with another library than an OpenBLAS of its own')
    name = ctypes.CDLL(libraries[0]).scipy_openblas_get_corename64_
    name.restype = ctypes.c_char_p
    side = 768
    a, b, c = (numpy.ones((side, side), numpy.float32) for _ in range(3))

    def seconds():
        begin = time.perf_counter()
        numpy.matmul(a, b.T, out=c)
        return time.perf_counter() - begin

    return f'{2e-9 * side ** 3 / min(seconds() for _ in range(9)):.1f} {name().decode()}'


def numpy_try(core_type):
    """What numpy_probe says with this core type forced; (0, '') where OpenBLAS does not know it or it fails."""
    env = {**os.environ, 'OPENBLAS_CORETYPE': core_type, 'OPENBLAS_NUM_THREADS': '1'}
    command = [sys.executable, os.path.abspath(__file__), '--numpy']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:                                 # the CPU lacks an instruction
        return 0, ''
    if done.stdout.startswith('skip '):
        raise Skip(done.stdout[len('skip '):].strip())
    rate, name = done.stdout.split()
    return (float(rate), name) if core_type in ('', name) else (0, '')


@functools.lru_cache(None)
def numpy_core_type():
    """The fastest core type of numpy's OpenBLAS here, of those that bench_gemm tries, and for its reason:
    where OpenBLAS does not know a CPU it takes kernels of a far older one, and any figure beside them
    flatters."""
    text = open(os.path.join(HERE, 'bench_gemm.c'), encoding='utf-8').read()
    known = re.findall(r'"(\w*)"', text.split(' core_types[] = {', 1)[1].split('};', 1)[0])
    best, chosen, kernels = 0, '', ''
    for core_type in [os.environ['OPENBLAS_CORETYPE']] if 'OPENBLAS_CORETYPE' in os.environ else known:
        rate, name = numpy_try(core_type)
        if rate:
            how = core_type or 'by itself'
            print(f'RIVAL numpy {how}: {rate} GFLOP/s with the kernels {name}', flush=True)
        if rate > 1.02 * best:
            best, chosen, kernels = rate, core_type, name
    if kernels in ('', 'Prescott', 'ARMV8'):            # where it knows nothing of the CPU
        raise Skip(f'its OpenBLAS has but fallback kernels here, "{kernels}": no rival')
    return chosen


def numpy_gemm(kind, m, n, k):
    """GFLOP/s, the median of seven times as many products as take some 20 ms. C =, where ours adds to C."""
    need('numpy')
    import numpy
    numbers = numpy.random.default_rng(1)
    a = numbers.random((k, m) if kind[0] == 't' else (m, k), dtype=numpy.float32)
    b = numbers.random((n, k) if kind[1] == 't' else (k, n), dtype=numpy.float32)
    c = numpy.empty((m, n), numpy.float32)
    a, b = a.T if kind[0] == 't' else a, b.T if kind[1] == 't' else b

    def seconds(repeats):
        begin = time.perf_counter()
        for _ in range(repeats):
            numpy.matmul(a, b, out=c)
        return (time.perf_counter() - begin) / repeats

    repeats = 1 + int(0.02 / seconds(1))
    return lambda: 2e-9 * m * n * k / statistics.median(seconds(repeats) for _ in range(7))


# ==== PyTorch ===================================================================================
def torch_model(s):
    """The same transformer in the operators that PyTorch is fastest with."""
    import torch
    from torch import nn
    import torch.nn.functional as F
    hidden, heads, gpt2 = s['hidden'], s['heads'], s['gpt2']
    size, kv_heads = hidden // heads, s['kv_heads'] or heads
    norm = (lambda: nn.LayerNorm(hidden)) if gpt2 else (lambda: nn.RMSNorm(hidden, eps=1e-5))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = norm(), norm()
            self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * size, bias=bool(gpt2))
            self.out = nn.Linear(hidden, hidden, bias=bool(gpt2))
            self.up = nn.Linear(hidden, (1 if gpt2 else 2) * s['inner'], bias=bool(gpt2))
            self.down = nn.Linear(s['inner'], hidden, bias=bool(gpt2))

        def forward(self, x, cos, sin):
            batch, length, _ = x.shape
            if kv_heads == heads:
                q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            else:
                q, k, v = self.qkv(self.norm1(x)).view(batch, length, -1, size).transpose(1, 2).split((heads, kv_heads, kv_heads), 1)
            if not gpt2:
                q, k = (t * cos + torch.cat((-t[..., size // 2:], t[..., :size // 2]), -1) * sin for t in (q, k))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, **({} if kv_heads == heads else {'enable_gqa': True}))
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, hidden))
            h = self.up(self.norm2(x))
            if gpt2:
                return x + self.down(F.gelu(h, approximate='tanh'))
            gate, up = h.chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(s['vocab'], hidden)
            self.positions = nn.Embedding(s['context'], hidden) if gpt2 else None
            self.blocks = nn.ModuleList(Block() for _ in range(s['layers']))
            self.norm = norm()
            self.head = nn.Linear(hidden, s['vocab'], bias=False)
            if s['tied']:
                self.head.weight = self.embed.weight
            angles = torch.arange(s['context'])[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
            self.cos, self.sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

        def forward(self, tokens):
            length = tokens.shape[1]
            x = self.embed(tokens)
            if gpt2:
                x = x + self.positions.weight[:length]
            for block in self.blocks:
                x = block(x, self.cos[:length], self.sin[:length])
            logits = self.head(self.norm(x[:, :-1]))
            return F.cross_entropy(logits.reshape(-1, s['vocab']), tokens[:, 1:].reshape(-1))

    return Model()


def torch_train(shape, threads, compiled, what='speed'):
    need('torch')
    import torch
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = torch_model(shape)
    n = shape['sequences'] * shape['length']
    loss_of = torch.compile(model) if compiled else model
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, fused=True)
    tokens = torch.randint(shape['vocab'], (shape['sequences'], shape['length']))

    def step():
        begin = time.perf_counter()
        loss_of(tokens).backward()
        adamw.step()
        adamw.zero_grad()
        return time.perf_counter() - begin

    step()
    steps = max(1, min(20, round(1 / step())))
    if what == 'memory':
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
    return lambda: n / statistics.median(step() for _ in range(steps))


# ==== transformers and TRL ======================================================================
def llama(shape):
    """Or GPT-2."""
    need('torch', 'transformers')
    import torch
    import transformers
    torch.manual_seed(1)
    if shape['gpt2']:
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=shape['vocab'], n_embd=shape['hidden'], n_layer=shape['layers'], n_head=shape['heads'], n_inner=shape['inner'],
            n_positions=shape['context'], bos_token_id=None, eos_token_id=None, pad_token_id=0))
    config = transformers.LlamaConfig(
        vocab_size=shape['vocab'], hidden_size=shape['hidden'], num_hidden_layers=shape['layers'], num_attention_heads=shape['heads'],
        intermediate_size=shape['inner'], max_position_embeddings=shape['context'], tie_word_embeddings=bool(shape['tied']),
        bos_token_id=None, eos_token_id=None, pad_token_id=0, **({'num_key_value_heads': shape['kv_heads']} if shape['kv_heads'] else {}))
    return transformers.LlamaForCausalLM(config)


def transformers_generate(shape, threads, sequences, tokens):
    need('torch', 'transformers')
    import torch
    torch.set_num_threads(threads)
    model = llama(shape).eval()
    prompt = torch.ones((sequences, 1), dtype=torch.long)

    def generate(n):
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, min_new_tokens=n,
                                 do_sample=sequences > 1, top_k=0, top_p=1.0, temperature=1.0)
        assert out.shape[1] == 1 + n
        return sequences * n / (time.perf_counter() - begin)

    generate(4)
    return lambda: generate(tokens)


def words_tokenizer(vocab):
    """Knows the words w0 (padding), w1 (the end), w2, ..."""
    import tokenizers
    import transformers
    words = {f'w{i}': i for i in range(vocab)}
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {'pad_token': 'w0', 'eos_token': 'w1', 'unk_token': 'w0'}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bare, **special)


def trl_step(shape, threads, math=None, bf16=False):
    """math: on the device. bf16: products by autocast. Seconds of GRPOTrainer's steps: as many prompts, responses and tokens, prompts of nine tokens (ours have 8.6), any reward."""
    need('torch', 'transformers', 'trl', 'datasets')
    if math:
        device_torch(math)
    os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'
    import torch
    import datasets
    import transformers
    import trl
    torch.set_num_threads(threads)
    tokenizer = words_tokenizer(shape['vocab'])
    prompts = [' '.join(f'w{(7 * i + 13 * k) % (shape["vocab"] - 2) + 2}' for k in range(9)) for i in range(4096)]
    seconds = []

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_args, **_names):
            if seconds:
                sys.stdin.readline() or os._exit(0)
            self.begin = time.perf_counter()

        def on_step_end(self, *_args, **_names):
            seconds.append(time.perf_counter() - self.begin)
            answer('ready' if len(seconds) == 1 else seconds[-1])

    model = llama(shape)
    model.generation_config.eos_token_id = model.config.eos_token_id = 1
    config = trl.GRPOConfig(
        output_dir=os.path.join(MADE, 'trl'), use_cpu=math is None, bf16=bf16 or math == 'bf16', fp16=False, report_to='none', save_strategy='no', logging_strategy='no',
        disable_tqdm=True, gradient_checkpointing=False, per_device_train_batch_size=PROMPTS * GENERATIONS, num_generations=GENERATIONS, max_completion_length=LENGTH,
        temperature=1.0, beta=0.0, max_steps=1000, learning_rate=1e-6, lr_scheduler_type='constant')
    trainer = trl.GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [float(len(c) % 3) for c in completions], args=config,
                              train_dataset=datasets.Dataset.from_dict({'prompt': prompts}), processing_class=tokenizer, callbacks=[Turns()])
    sys.stdout = sys.stderr
    trainer.train()


# ==== sampler and trainer =======================================================================
RANDOM = {'tiny': 'demo', '10m': '10m'}                 # shapes of bench.h
MODELS = [*RANDOM, 'SmolLM2-135M-Instruct']
WAYS = {'float32': (False, 'float32'), 'bf16 (its default)': (True, 'float32'),         # autocast, weights
        'bf16 weights': (True, 'bfloat16')}
QUESTIONS = '''Why is the sky blue?
Write a short story about a lighthouse keeper who finds a letter in a bottle one stormy night.
Explain how a refrigerator works.
A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Show your steps.
What should I see in Rome in three days, if I love old paintings but walk slowly and hate queues?
Describe autumn.
Give me five names for a bakery and say what each of them promises to somebody who passes by.
How do bees make honey?
Natalia sold clips to 48 of her friends in April, and then half as many in May. How many altogether?
Who was Marie Curie?
Compare tea and coffee, their history, their taste and what they do to sleep.
Explain recursion to a child.'''.split('\n')


def ratio_weights(name):
    """Random weights in a folder that ratio.c and transformers read."""
    model = llama(shapes()[RANDOM[name]])
    model.generation_config.eos_token_id = model.config.eos_token_id = 1
    model.save_pretrained(os.path.join(MADE, 'ratio-' + name))


def ratio_model(name):
    """Folder, tokenizer and twelve prompts of unequal lengths."""
    import transformers
    if name in RANDOM:
        vocab = shapes()[RANDOM[name]]['vocab']
        prompts = [' '.join(f'w{(7 * i + 13 * k) % (vocab - 2) + 2}' for k in range(3 + 5 * i % 17))
                   for i in range(12)]
        return os.path.join(MADE, 'ratio-' + name), words_tokenizer(vocab), prompts
    folder = os.path.join(BUILD, 'real-model', name)
    if not os.path.isdir(folder):
        raise Skip(f'no build/real-model/{name} (make real-model)')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer.apply_chat_template([{'role': 'user', 'content': question}], tokenize=False,
                                             add_generation_prompt=True) for question in QUESTIONS]
    return folder, tokenizer, prompts


def ratio_trl(name, temperature, way):
    """A line as ratio.c prints it, of as many responses in as many steps of TRL's GRPOTrainer, with the
    generate of transformers and its cache. The log-probs of training are those that its loss is made of.
    Those of sampling TRL keeps with vLLM alone: generate is asked for the scores it draws from, TRL's own
    function makes log-probs of them, in float32."""
    folder, tokenizer, prompts = ratio_model(name)
    os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'
    import datasets
    import torch
    import trl
    from trl.trainer.utils import selective_log_softmax
    pairs = []

    class Trainer(trl.GRPOTrainer):
        def _generate_single_turn(self, *args, **names):
            ids, _ = super()._generate_single_turn(*args, **names)
            return ids, [row[:len(some)].tolist() for row, some in zip(self.drawn, ids)]

        def _get_per_token_logps_and_entropies(self, *args, **names):
            self.found = super()._get_per_token_logps_and_entropies(*args, **names)
            return self.found

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            mask = inputs['completion_mask'].bool()
            pairs.append((inputs['sampling_per_token_logps'][mask], self.found[0].detach()[mask]))
            return loss

    autocast, dtype = WAYS[way]
    config = trl.GRPOConfig(
        output_dir=os.path.join(MADE, 'trl'), use_cpu=True, bf16=autocast, model_init_kwargs={'dtype': dtype},
        report_to='none', save_strategy='no', logging_strategy='no', disable_tqdm=True, shuffle_dataset=False,
        per_device_train_batch_size=32, num_generations=8, max_completion_length=64, temperature=temperature,
        max_steps=len(prompts) // 4)
    trainer = Trainer(
        model=folder, args=config, processing_class=tokenizer,
        reward_funcs=lambda completion_ids, **_: [float(len(ids) % 3) for ids in completion_ids],
        train_dataset=datasets.Dataset.from_dict({'prompt': prompts}))
    generate = trainer.model.generate

    def with_scores(**names):
        out = generate(**names, return_dict_in_generate=True, output_scores=True)
        scores = torch.stack(out.scores, 1)
        trainer.drawn = selective_log_softmax(scores, out.sequences[:, -scores.shape[1]:])
        return out.sequences

    trainer.model.generate = with_scores
    trainer.train()
    drawn, trained = (torch.cat(some).double() for some in zip(*pairs))
    gap, ratio = trained - drawn, (trained - drawn).exp()
    differ, outside = (of.double().mean() for of in (gap != 0, (ratio < 0.9) | (ratio > 1.1)))
    return (f'RATIO tokens={len(gap)} differ={differ:.4g} mean={gap.abs().mean():.3g} '
            f'max={gap.abs().max():.3g} low={ratio.min():.7g} high={ratio.max():.7g} outside={outside:.4g}')


def ratio_ours(name, temperature, matmul):
    folder, tokenizer, prompts = ratio_model(name)
    path = os.path.join(MADE, f'ratio-{name}.txt')
    with open(path, 'w', encoding='utf-8') as file:
        file.writelines(' '.join(map(str, tokenizer(prompt)['input_ids'])) + '\n' for prompt in prompts)
    command = [os.path.join(BUILD, 'ratio'), folder, path, str(temperature), str(tokenizer.eos_token_id)]
    env = {**os.environ, 'TT_MATMUL': matmul}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True).stdout


def ratio_theirs(name, temperature, way):
    """In a process of its own: one has one precision."""
    command = [sys.executable, os.path.abspath(__file__), '--ratio-trl', name, str(temperature), way]
    env = {**os.environ, 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1'}
    with open(os.path.join(MADE, 'peers.log'), 'a', encoding='utf-8') as log:
        return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True).stdout


def ratios(part):
    """The table, a row as soon as it is measured."""
    need('torch', 'transformers', 'trl', 'datasets')
    os.makedirs(MADE, exist_ok=True)
    versions()
    print('| model | T | | tokens | differ | mean difference | largest | ratio | beyond 0.9, 1.1 | moved |')
    print('|---|---|---|' + '---:|' * 7, flush=True)
    systems = [('here, float32', ratio_ours, 'f32'), ('here, bf16 products', ratio_ours, 'bf16')]
    systems += [(f'TRL, {way}', ratio_theirs, way) for way in WAYS]
    for name in MODELS:
        if part not in name:
            continue
        if name in RANDOM:
            ratio_weights(name)
        for temperature in 1, 0.7:
            for system, measure, way in systems:
                f = fields(measure(name, temperature, way))
                if 'tokens' not in f:
                    raise SystemExit(f'{system} failed with {name}, see above or {MADE}/peers.log')
                cells = [name, temperature, system, *(f[key] for key in ('tokens', 'differ', 'mean', 'max')),
                         f'{f["low"]} .. {f["high"]}', f['outside'], f.get('moved', '')]
                print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)


# ==== on the device =============================================================================
MATHS = {'f32': '', 'tf32': '_tf32', 'bf16': '_bf16'}       # TT_CUDA_MATH, and how the names of bench.h end then


def device_torch(math):
    """torch, whose products of floats have that precision."""
    need('torch')
    import torch
    if not torch.cuda.is_available():
        raise Skip('PyTorch sees no device')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = math == 'tf32'
    torch.manual_seed(1)
    return torch


def device_rate(torch, run, work):
    """work a second: the median of seven times as many runs as take some 20 ms."""
    def seconds(n):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(n):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / n

    seconds(2)
    repeats = 1 + int(0.02 / seconds(1))
    return lambda: work / statistics.median(seconds(repeats) for _ in range(7))


def bench_rows(name):
    """The numbers in the rows of a table of bench_gemm.c, with the kind of product before them if they have one."""
    text = open(os.path.join(HERE, 'bench_gemm.c'), encoding='utf-8').read()
    table = text.split(f' {name}[] = {{', 1)[1].split('};', 1)[0]
    return [(kind, *map(int, numbers.split(','))) for kind, numbers in re.findall(r'\{(?:"(\w+)", )?([\d, ]+)\}', table)]


def device_gemm(math, kind, m, n, k):
    torch = device_torch(math)
    dtype = torch.bfloat16 if math == 'bf16' else torch.float32
    a = torch.randn((k, m) if kind[0] == 't' else (m, k), device='cuda', dtype=dtype)
    b = torch.randn((n, k) if kind[1] == 't' else (k, n), device='cuda', dtype=dtype)
    c = torch.zeros((m, n), device='cuda', dtype=dtype)
    a, b = a.T if kind[0] == 't' else a, b.T if kind[1] == 't' else b
    run = (lambda: c.addmm_(a, b)) if kind[0] == 't' else (lambda: torch.mm(a, b, out=c))
    return device_rate(torch, run, 2e-9 * m * n * k)


def device_attention(math, sequences, length, heads, size, backward):
    torch = device_torch(math)
    dtype = torch.bfloat16 if math == 'bf16' else torch.float32
    q, k, v = (torch.randn((sequences, h, length, size), device='cuda', dtype=dtype, requires_grad=backward) for h in (heads, heads // 4, heads // 4))
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = attend()
    dout = torch.randn_like(out)
    run = (lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)) if backward else attend
    return device_rate(torch, run, (5e-9 if backward else 2e-9) * sequences * length * length * heads * size)


def device_train(shape, math, compiled, what='speed'):
    torch = device_torch(math)
    model = torch_model(shape)
    model.cos, model.sin = model.cos.cuda(), model.sin.cuda()
    loss_of = torch.compile(model.cuda()) if compiled else model.cuda()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0, fused=True)
    tokens = torch.randint(shape['vocab'], (shape['sequences'], shape['length']), device='cuda')

    def step():
        with torch.autocast('cuda', torch.bfloat16, enabled=math == 'bf16'):
            loss = loss_of(tokens)
        loss.backward()
        adamw.step()
        adamw.zero_grad()

    rate = device_rate(torch, step, shape['sequences'] * shape['length'])
    return rate if what == 'speed' else lambda: 1e-6 * torch.cuda.max_memory_allocated()


def device_generate(shape, math, sequences, tokens):
    torch = device_torch(math)
    model = llama(shape).eval().to('cuda', torch.bfloat16 if math == 'bf16' else torch.float32)
    prompt = torch.ones((sequences, 1), dtype=torch.long, device='cuda')

    def generate():
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, min_new_tokens=tokens,
                                 do_sample=sequences > 1, top_k=0, top_p=1.0, temperature=1.0, cache_implementation='static')
        torch.cuda.synchronize()
        assert out.shape[1] == 1 + tokens
        return sequences * tokens / (time.perf_counter() - begin)

    generate()
    generate()
    return generate


def device_rivals():
    """As rivals() below, on the device, in each precision."""
    s = shapes()
    for math, end in MATHS.items():
        for kind, m, n, k, _ in bench_rows('device_training'):
            yield f'gemm_{kind}_{m}x{n}x{k}{end}', 'cuda/bench_gemm', 'pytorch', lambda math=math, p=(kind, m, n, k): device_gemm(math, *p)
        for _, *sizes in bench_rows('attentions'):
            for back in False, True:
                yield (f'attention_{"backward" if back else "forward"}_{"x".join(map(str, sizes))}{end}', 'cuda/bench_gemm', 'pytorch',
                       lambda math=math, sizes=sizes, back=back: device_attention(math, *sizes, back))
        for name in 'gpt2_124m', 'gpt2_124m_16x1024', 'llama_1b':
            for rival, compiled in ('pytorch', False), ('pytorch_compile', True):
                for figure, what in ('train', 'speed'), ('memory_train', 'memory'):
                    yield f'{figure}_{name}{end}', 'cuda/bench_train', rival, lambda math=math, name=name, compiled=compiled, what=what: device_train(s[name], math, compiled, what)
        for name in 'gpt2_124m', 'llama_1b':
            for n in 1, 64, 256:
                yield f'decode_{name}_b{n}{end}', 'cuda/bench_generate', 'transformers_compile', lambda math=math, name=name, n=n: device_generate(s[name], math, n, 128)
        for name, shape in ('tiny', 'demo'), ('10m', '10m'):
            yield f'grpo_step_{name}{end}', 'cuda/bench_grpo', 'trl', lambda math=math, shape=shape: trl_step(s[shape], 1, math)


PROOF = [(r'attention_\w+?_bf16', 'pytorch'), (r'train_gpt2_124m_16x1024_bf16', 'pytorch_compile'), (r'train_llama_1b_bf16', 'pytorch_compile'),
         (r'gemm_nt_\w+_bf16', 'pytorch'), (r'attention_(forward|backward)_[\dx]+', 'pytorch'), (r'gemm_nt_[\dx]+', 'pytorch'),
         (r'decode_\w+_b(1|64|256)_bf16', 'transformers_compile')]


def prove(how):
    """The figures of PROOF in their order, each printed before the next begins. Status 77: nothing can be measured here."""
    figures = [(figure, rival, make) for pattern, wanted in PROOF for figure, _, rival, make in device_rivals() if rival == wanted and re.fullmatch(pattern, figure)]
    if how == 'dry' or not importlib.util.find_spec('torch'):
        print(f'{len(figures)} figures of PyTorch:', *(figure for figure, _, _ in figures))
        print('no device here' if how == 'dry' else 'torch is not installed')
        sys.exit(77)
    versions()
    for figure, rival, make in figures:
        if how == 'warm' and rival != 'pytorch_compile':
            continue
        try:
            print(f'PEER name={figure} rival={rival} rival_value={make()():.5g}', flush=True)
        except Skip as why:
            print(f'skip {rival} {figure}: {why}', flush=True)
        except Exception as why:                        # out of memory, say: the others are still to be measured
            print(f'FAIL {rival} {figure}: {type(why).__name__}: {str(why).splitlines()[0]}', flush=True)
        import gc
        import torch
        gc.collect()
        torch.cuda.empty_cache()


def split_math(figure):
    """The figure's name without its ending, and the precision that the ending tells."""
    for math in 'tf32', 'bf16':
        if figure.endswith('_' + math):
            return figure[:-len(math) - 1], math
    return figure, 'f32'


# ==== programs in C =============================================================================
def llama2c(shape, threads, tokens):
    """tok/s as run.c reports them, greedy."""
    program = checkout('llama2.c', 'run.c')

    def write(file):
        import array
        s = shape
        array.array('i', [s['hidden'], s['inner'], s['layers'], s['heads'], s['heads'], s['vocab'], s['context']]).tofile(file)
        layer = 4 * s['hidden'] ** 2 + 3 * s['hidden'] * s['inner'] + 2 * s['hidden']
        random_floats(file, s['vocab'] * s['hidden'] + s['layers'] * layer + s['hidden'] + s['context'] * (s['hidden'] // s['heads']))

    weights = made(f'llama2c_{shape["hidden"]}.bin', write)
    command = [program, weights, '-z', os.path.join(os.environ['PEER_DIR'], 'llama2.c', 'tokenizer.bin'), '-t', '0', '-n', str(tokens)]

    def measure():
        done = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': str(threads)}, capture_output=True, check=True)
        return float(re.search(rb'achieved tok/s: ([\d.]+)', done.stderr).group(1))

    measure()
    return measure


def llmc(shape, threads):
    """train_gpt2.c as it is, which trains on 4 x 64 tokens for 40 steps; it stands still while ours runs."""
    program = checkout('llm.c', 'train_gpt2.c')
    import array
    import signal
    s = shape

    def weights(file):
        padded, hidden = (s['vocab'] + 127) // 128 * 128, s['hidden']
        array.array('i', [20240326, 3, s['context'], s['vocab'], s['layers'], s['heads'], hidden, padded] + [0] * 248).tofile(file)
        random_floats(file, (padded + s['context']) * hidden + s['layers'] * (12 * hidden * hidden + 13 * hidden) + 2 * hidden)

    def tokens(file):
        array.array('i', [20240520, 1, 1 << 15] + [0] * 253).tofile(file)
        array.array('H', [i * 40503 % s['vocab'] for i in range(1 << 15)]).tofile(file)

    made('llmc/gpt2_124M.bin', weights)
    for part in 'train', 'val':
        made(f'llmc/dev/data/tinyshakespeare/tiny_shakespeare_{part}.bin', tokens)
    child = subprocess.Popen(['stdbuf', '-oL', program], cwd=os.path.join(MADE, 'llmc'), env={**os.environ, 'OMP_NUM_THREADS': str(threads)},
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def step_seconds():
        for line in child.stdout:
            took = re.search(r'took ([\d.]+) ms', line)
            if took:
                return float(took.group(1)) / 1000
        raise RuntimeError('train_gpt2 has ended')

    def measure():
        child.send_signal(signal.SIGCONT)
        step_seconds()                          # the one that was interrupted
        seconds = step_seconds()
        child.send_signal(signal.SIGSTOP)
        return s['sequences'] * s['length'] / seconds

    step_seconds()
    child.send_signal(signal.SIGSTOP)
    measure.end = child.kill
    return measure


def llama_cpp(kind, threads, sequences, tokens):
    """Decoding with llama_decode as llama-bench does it: any tokens, logits of all sequences, no sampling."""
    need('llama_cpp', 'numpy')
    source = os.path.join(BUILD, 'real-model', 'SmolLM2-135M-Instruct')
    if not os.path.isdir(source):
        raise Skip('no build/real-model (make real-model)')
    path = os.path.join(MADE, f'smollm2-{kind}.gguf')
    if not os.path.exists(path):
        os.makedirs(MADE, exist_ok=True)
        subprocess.run([sys.executable, os.path.join(os.path.dirname(HERE), 'tools', 'convert_weights.py'), source, path, '--to', 'gguf', '--dtype', kind],
                       check=True, stdout=subprocess.DEVNULL)
    import ctypes
    import llama_cpp as lib
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = sequences * 256
    params.n_batch = params.n_ubatch = max(32, sequences)
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = threads
    ctx = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(sequences, 0, 1)

    def decode(n):
        lib.llama_memory_clear(lib.llama_get_memory(ctx), True)
        begin = time.perf_counter()
        for position in range(n):
            batch.n_tokens = sequences
            for i in range(sequences):
                batch.token[i] = 100 + (7919 * position + 31 * i) % 40000
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = i
                batch.logits[i] = 1
            if lib.llama_decode(ctx, batch) != 0:
                raise RuntimeError('llama_decode failed')
            lib.llama_get_logits_ith(ctx, 0)
        return sequences * n / (time.perf_counter() - begin)

    decode(4)
    decode.keep = quiet
    return lambda: decode(tokens)


# ==== tokenizers ================================================================================
def encoder(library, path):
    need(library)
    path = os.path.join(DATA, 'tokenizers', path)
    if not os.path.exists(path):
        raise Skip(f'no {path}')
    if library == 'tokenizers':
        import tokenizers
        return tokenizers.Tokenizer.from_file(path)
    import tiktoken
    import tiktoken.load
    import tiktoken_ext.openai_public as public
    public.load_tiktoken_bpe = lambda *_args, **_names: tiktoken.load.load_tiktoken_bpe(path)
    encoding = tiktoken.Encoding(**getattr(public, os.path.basename(path)[:-len('.tiktoken')])())
    return encoding


def encode(library, path, text):
    """MB/s on one thread, the fastest of three; tokenizers gets the lines apart, without offsets, with which it is fastest."""
    coder = encoder(library, path)
    text = open(os.path.join(DATA, TEXTS[text]), encoding='utf-8', newline='').read()
    lines = text.splitlines(keepends=True)
    size = 1e-6 * len(text.encode())

    def once():
        begin = time.perf_counter()
        coder.encode_batch_fast(lines) if library == 'tokenizers' else coder.encode(text, allowed_special='all')
        return size / (time.perf_counter() - begin)

    return lambda: max(once() for _ in range(3))


def train_tokenizer():
    need('tokenizers')
    path = os.path.join(MADE, 'corpus.txt')
    if not os.path.exists(path):
        raise Skip('no build/bench/corpus.txt (build/bench_tokenizer 1 bpe_train)')
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    text = open(path, encoding='utf-8', newline='').read()

    def measure():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=32000, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        begin = time.perf_counter()
        tokenizer.train_from_iterator([text], trainer)
        return time.perf_counter() - begin

    return measure


# ==== turns =====================================================================================
def rivals(threads):
    """(figure, bench program, rival, its measurement); a measurement makes a function that gives one figure."""
    s = shapes()
    for kind, m, n, k, _ in bench_rows('training'):
        yield f'gemm_{kind}_{m}x{n}x{k}', 'bench_gemm', 'numpy', lambda p=(kind, m, n, k): numpy_gemm(*p)
    for name in 'demo', '4x128', '6x384', 'gpt2_124m':
        for rival, compiled in ('pytorch', False), ('pytorch_compile', True):
            yield f'train_{name}', 'bench_train', rival, lambda name=name, compiled=compiled: torch_train(s[name], threads, compiled)
        yield f'memory_train_{name}', 'bench_train', 'pytorch', lambda name=name: torch_train(s[name], threads, False, 'memory')
    yield 'train_gpt2_124m', 'bench_train', 'llm.c', lambda: llmc(s['gpt2_124m'], threads)
    for name, n, tokens in ('15m', 1, 128), ('110m', 1, 32), ('110m', 64, 32), ('demo', 128, 128):
        yield f'decode_{name}_b{n}', 'bench_generate', 'transformers', lambda name=name, n=n, tokens=tokens: transformers_generate(s[name], threads, n, tokens)
    for name, tokens in ('15m', 129), ('110m', 33):
        yield f'decode_{name}_b1', 'bench_generate', 'llama2.c', lambda name=name, tokens=tokens: llama2c(s[name], threads, tokens)
    for kind, rounded in ('f32', ''), ('bf16', ''), ('bf16', '_bf16'):             # llama.cpp rounds the activations of bf16 too
        for n in 1, 32:
            yield f'decode_smollm2_{kind}_b{n}{rounded}', 'bench_generate', 'llama.cpp', lambda kind=kind, n=n: llama_cpp(kind, threads, n, 128 if n == 1 else 32)
    for name, shape in ('tiny', 'demo'), ('10m', '10m'):
        for bf16 in False, True:
            yield f'grpo_step_{name}{"_bf16" * bf16}', 'bench_grpo', 'trl', lambda shape=shape, bf16=bf16: trl_step(s[shape], threads, bf16=bf16)
    if threads == 1:
        for text in TEXTS:
            for name, library, path in (('gpt2', 'tokenizers', 'gpt2/tokenizer.json'), ('gpt2', 'tiktoken', 'tiktoken/r50k_base.tiktoken'),
                                        ('llama3', 'tokenizers', 'llama3/tokenizer.json'), ('cl100k', 'tiktoken', 'tiktoken/cl100k_base.tiktoken')):
                yield f'encode_{name}_{text}', 'bench_tokenizer', library, lambda library=library, path=path, text=text: encode(library, path, text)
        yield 'bpe_train_32k', 'bench_tokenizer', 'tokenizers', train_tokenizer


def answer(value):
    print(value, file=sys.__stdout__, flush=True)


def serve(figure, rival, threads):
    """In the rival's process: a line asks for a figure. threads 0: on the device."""
    try:
        make = next(m for f, _, r, m in (rivals(threads) if threads else device_rivals()) if (f, r) == (figure, rival))
        measure = make()
        answer('ready')
        for _ in sys.stdin:
            answer(measure())
        getattr(measure, 'end', lambda: None)()
    except Skip as why:
        answer(f'skip {why}')


def fields(line):
    """The values of a line of bench.h by their names."""
    return {key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\S+)', line)}


def ours(program, figure, threads):
    part, env = figure, None
    if threads and figure.endswith('_bf16'):
        part, env = figure[:-len('_bf16')], {**os.environ, 'TT_MATMUL': 'bf16'}
    elif not threads:
        part, math = split_math(figure)
        env = {**os.environ, 'TT_BACKEND': 'cuda', 'TT_CUDA_MATH': math}
    done = subprocess.run([os.path.join(BUILD, program), str(threads), part], cwd=os.path.dirname(BUILD), env=env, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith('BENCH') and fields(line)['name'] == figure:
            return fields(line)
    raise Skip(f'{program} gave no {figure}')


def turns(figure, program, rival, threads):
    command = [sys.executable, os.path.abspath(__file__), '--serve', figure, rival, str(threads)]
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'RAYON_NUM_THREADS': str(threads), 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1'}
    if not threads:
        env = {**os.environ, 'TOKENIZERS_PARALLELISM': 'false', 'HF_HUB_OFFLINE': '1'}
    if rival == 'numpy':
        env['OPENBLAS_CORETYPE'] = numpy_core_type()
        env['OPENBLAS_NUM_THREADS'] = str(threads)
    with open(os.path.join(MADE, 'peers.log'), 'a', encoding='utf-8') as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            said = child.stdout.readline().strip()
            if said != 'ready':
                raise Skip(said[len('skip '):] if said.startswith('skip ') else f'it failed, see {log.name}')
            mine, theirs = [], []
            for _ in range(ROUNDS):
                line = ours(program, figure, threads)
                mine.append(float(line['ours']))
                child.stdin.write('\n')
                child.stdin.flush()
                said = child.stdout.readline()
                if not said:
                    raise Skip(f'it died, see {log.name}')
                theirs.append(float(said))
        finally:
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
    less_is_better = line['unit'] in ('s', 'ms', 'MB')
    ratio = statistics.median(b / a if less_is_better else a / b for a, b in zip(mine, theirs))
    print(f'BENCH name={figure} threads={threads or 1} ours={statistics.median(mine):.5g} unit={line["unit"]} spread={min(mine):.5g}..{max(mine):.5g} '
          f'rival={rival} rival_value={statistics.median(theirs):.5g} rival_spread={min(theirs):.5g}..{max(theirs):.5g} ratio={ratio:.3f} '
          f'kernel={line["kernel"]} peak={line["peak"]} share={line["share"]}', flush=True)


def versions():
    """A PEERS line: what is installed, and the commits of the checkouts."""
    found = []
    for package in 'numpy', 'torch', 'transformers', 'trl', 'tokenizers', 'tiktoken', 'llama-cpp-python':
        try:
            found.append(f'{package}={importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            pass
    for name in 'llama2.c', 'llm.c':
        where = os.path.join(os.environ.get('PEER_DIR', '/nowhere'), name)
        if os.path.isdir(where):
            done = subprocess.run(['git', '-C', where, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True)
            found.append(f'{name}={done.stdout.strip() or "unknown"}')
    print('PEERS', *found, flush=True)


def measure_all(threads, part, on_device=False):
    os.makedirs(MADE, exist_ok=True)
    versions()
    skipped = {}
    for n in [0] if on_device else [threads] if threads else sorted({1, os.cpu_count() or 1}):
        for figure, program, rival, _ in device_rivals() if on_device else rivals(n):
            if part not in figure and part != rival:
                continue
            try:
                if not os.path.exists(os.path.join(BUILD, program)):
                    raise Skip(f'no build/{program}')
                turns(figure, program, rival, n)
            except Skip as why:
                skipped.setdefault((rival, str(why)), {}).setdefault(figure)
    for (rival, why), figures in skipped.items():
        print(f'skip {rival} ({" ".join(figures)}): {why}', flush=True)


# ==== RESULTS.md ================================================================================
BEGIN, END = '<!-- made by make bench: begin -->', '<!-- made by make bench: end -->'
TITLES = [('gemm_', 'Matrix products'), ('train_', 'Training steps'), ('memory_train_', 'Peak resident memory of training'), ('decode_', 'Sampling'), ('first_', 'From exec to the first token'),
          ('grpo_', 'GRPO steps'), ('think_', 'ThinkTuning steps'), ('encode_', 'Tokenizers: encoding'), (('bpe_', 'memory_bpe_'), 'Tokenizers: training')]


def cells(row):
    """Ours with its spread, its share of the peak, every rival and how many times better ours is."""
    if not row:
        return ['', '', '']
    f = row['own'] or row['paired']
    return [f'{f["ours"]} ({f["spread"]})', '' if f['share'] == '-' else f'{f["share"]} {f["peak"]}', '; '.join(row['rivals'])]


def tables(lines):
    """One table for each kind of figure: a row for each figure, three columns for each number of threads."""
    rows, threads = {}, set()
    for line in lines:
        if not line.startswith('BENCH'):
            continue
        f = fields(line)
        threads.add(int(f['threads']))
        row = rows.setdefault((f['name'], f['unit']), {}).setdefault(int(f['threads']), {'own': None, 'paired': None, 'rivals': []})
        row['paired' if 'rival_spread' in f else 'own'] = f
        if f['rival'] != '-':
            row['rivals'].append(f'{f["rival"]} {f["rival_value"]}: **{float(f["ratio"]):.2f} ×**')
    threads = sorted(threads)
    for prefix, title in TITLES:
        some = {key: row for key, row in rows.items() if key[0].startswith(prefix)}
        if not some:
            continue
        yield f'\n### {title}\n'
        yield '| figure | unit |' + ''.join(f' {n} thread{"s" * (n > 1)} | share | rivals |' for n in threads)
        yield '|---' * (2 + 3 * len(threads)) + '|'
        for (name, unit), row in some.items():
            yield '| ' + ' | '.join([name, unit] + [cell for n in threads for cell in cells(row.get(n))]) + ' |'


def write(log, results):
    lines = open(log, encoding='utf-8').read().splitlines()
    machine = next((fields(line) for line in lines if line.startswith('MACHINE')), None)
    if not machine:
        raise SystemExit(f'{log} has no MACHINE line')
    text = [BEGIN, f'Measured {time.strftime("%Y-%m-%d", time.gmtime(os.path.getmtime(log)))} by `make bench`: {machine["cpu"]}, {machine["cores"]} cores, {machine["simd"]}; '
            f'{machine["compiler"]}, `{machine["flags"]}`; commit {machine["commit"]}; load before the first bench {machine["load"]}.\n']
    text += ['| threads | multiply-adds f32 | bf16 | read |', '|---|---|---|---|']
    limits = {}
    for line in lines:
        if line.startswith('LIMIT'):
            f = fields(line)
            best = limits.setdefault(int(f['threads']), {})
            for key in 'fma', 'bf16', 'read':
                best[key] = max(best.get(key, 0), float(f[key]))
    text += [f'| {n} | {b["fma"]:.0f} GFLOP/s | {b["bf16"]:.0f} GFLOP/s | {b["read"]:.1f} GB/s |' for n, b in sorted(limits.items())]
    text += tables(lines)
    for title, kind in (('Rivals', 'PEERS'), ('Kernels of OpenBLAS', 'RIVAL'),
                        ('Where the time of a step goes', 'PARTS'), ('Left out', 'skip')):
        some = [line[len(kind) + 1:].replace('name=', '').replace('=', ' ') for line in lines if line.startswith(kind + ' ')]
        if some:
            text += [f'\n### {title}\n'] + [f'- {line}' for line in dict.fromkeys(some)]
    text.append(END)
    whole = open(results, encoding='utf-8').read()
    if BEGIN not in whole or END not in whole:
        raise SystemExit(f'{results} has no generated part: {BEGIN} ... {END}')
    before, after = whole.split(BEGIN, 1)[0], whole.split(END, 1)[1]
    with open(results, 'w', encoding='utf-8') as file:
        file.write(before + '\n'.join(text) + after)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--serve']:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ['--numpy']:
        try:
            print(numpy_probe())
        except Skip as why:
            print(f'skip {why}')
    elif sys.argv[1:2] == ['--ratio-trl']:
        print(ratio_trl(sys.argv[2], float(sys.argv[3]), sys.argv[4]))
    elif sys.argv[1:2] == ['--ratio']:
        try:
            ratios(sys.argv[2] if len(sys.argv) > 2 else '')
        except Skip as why:
            print(f'skip: {why}')
    elif sys.argv[1:2] == ['--cuda']:
        measure_all(0, sys.argv[2] if len(sys.argv) > 2 else '', True)
    elif sys.argv[1:2] == ['--proof']:
        prove(sys.argv[2] if len(sys.argv) > 2 else '')
    elif sys.argv[1:2] == ['--write']:
        write(sys.argv[2], sys.argv[3])
    else:
        measure_all(int(sys.argv[1]) if len(sys.argv) > 1 else 0, sys.argv[2] if len(sys.argv) > 2 else '')
