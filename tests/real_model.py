#!/usr/bin/env python3
"""A converted model of real size beside transformers and llama.cpp: make real-model PYTHON=...

    real_model.py DIR [FILE.gguf]     DIR: what tools/convert_weights.py wrote; FILE: what it was made of

transformers loads DIR in float32: ids of texts and of chats, log-probs of several hundred tokens (at most 2e-4 apart:
single precision in another order), greedy answers. llama.cpp (package xllamacpp) continues two prompts alike from
DIR as GGUF in float32; what it makes of FILE, with quantized arithmetic, is only shown. Needs build/generate, build/tokenize,
build/logprobs; packages that are missing are skipped by name. The last line is "N passed, N failed"."""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / 'build'
TOLERANCE = 2e-4
NEW_TOKENS = 48
counts = {True: 0, False: 0}

PASSAGE = """The tide had gone out so far that the harbour was a field of mud, and the boats lay on their sides in it like
cattle in the heat. A man with a bucket walked between them, bending now and then, and behind him his steps filled slowly
with water. "If you want to know how a boat is made," he said to the girl who followed him, "look at it when it cannot
float." She counted 17 boats and wrote the number down, then 3 more behind the pier, and was proud of the sum: 17 + 3 = 20.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)   # an empty list is an error

L'été, les bateaux sèchent au soleil; im Winter liegt Schnee darauf. 東京の港は広い。 Nobody in the village could say who had
built the wall, only that it was older than the church, and that the sea had never once come over it."""
CHATS = [[{'role': 'user', 'content': 'What is the capital of France?'}],
         [{'role': 'user', 'content': 'Name three primes.'}, {'role': 'assistant', 'content': '2, 3 and 5.'}, {'role': 'user', 'content': 'And their sum?'}],
         [{'role': 'system', 'content': 'Answer in one short sentence.'}, {'role': 'user', 'content': 'Why is the sky blue?'}]]


def check(good, text):
    counts[bool(good)] += 1
    print('ok    ' if good else 'FAIL  ', text, flush=True)


def run(*command, text=None):
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True, encoding='utf-8')
    if done.returncode != 0:
        raise SystemExit(f'{command[0]}: {done.stderr.strip()}')
    return done.stdout


def encode(model, text):
    return [int(i) for i in run(BUILD / 'tokenize', 'encode', '--tokenizer', model, '--no-bos', text=text).split()]


def greedy(model, prompt):
    return [int(i) for i in run(BUILD / 'generate', '--model', model, '--prompt', prompt, '--greedy', '--ids', '--max-tokens', NEW_TOKENS).split()]


def beside_transformers(model):
    """The prompts of the chats as text, with our greedy ids."""
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = tokenizer(PASSAGE, add_special_tokens=False)['input_ids']
    check(encode(model, PASSAGE) == ids, f'{len(ids)} ids of a passage')
    chat = tokenizer.apply_chat_template(CHATS[1], tokenize=False) + PASSAGE[:300]
    for name, sequence in (('a passage', ids), ('a chat', tokenizer(chat, add_special_tokens=False)['input_ids'])):
        mine = [float(x) for x in run(BUILD / 'logprobs', model, text=' '.join(map(str, sequence))).split()]
        with torch.no_grad():
            logits = reference(torch.tensor([sequence])).logits[0, :-1].double()
        theirs = torch.log_softmax(logits, -1).gather(1, torch.tensor(sequence[1:])[:, None])[:, 0].tolist()
        apart = max(abs(a - b) for a, b in zip(mine, theirs))
        check(len(mine) == len(theirs) and apart <= TOLERANCE,
              f'log-probs of {len(mine)} tokens of {name}: {apart:.1e} apart at most, mean {sum(mine) / len(mine):.4f}')
    for number, talk in enumerate(CHATS):
        prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        sequence = tokenizer(prompt, add_special_tokens=False)['input_ids']
        with torch.no_grad():
            out = reference.generate(torch.tensor([sequence]), max_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None, top_k=None)
        theirs, mine = out[0, len(sequence):].tolist(), greedy(model, prompt)
        check(mine == theirs, f'greedy answer {number}, {len(mine)} tokens: {tokenizer.decode(mine)[:70]!r}')
        if len(talk) == 1:
            said = run(BUILD / 'generate', '--model', model, '--chat', '--greedy', '--max-tokens', NEW_TOKENS, text=talk[0]['content'] + '\n')
            check(said.removeprefix('> ').removesuffix('> \n').strip() == tokenizer.decode(theirs, skip_special_tokens=True).strip(), 'the same answer by --chat')


def beside_llamacpp(model, source):
    import xllamacpp
    prompts = (PASSAGE[:400], '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n')
    single = BUILD / 'real-model' / 'f32.gguf'
    single.parent.mkdir(parents=True, exist_ok=True)
    single.unlink(missing_ok=True)
    run(sys.executable, ROOT / 'tools' / 'convert_weights.py', model, single, '--to', 'gguf', '--dtype', 'f32')
    for path in [single] + ([source] if source else []):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.cpuparams.n_threads = 2
        params.warmup = False
        params.verbosity = -1
        server = xllamacpp.Server(params)
        for number, prompt in enumerate(prompts):
            mine = run(BUILD / 'tokenize', 'decode', '--tokenizer', model, '--skip-special', text=' '.join(map(str, greedy(model, prompt))))
            answer = server.handle_completions({'prompt': encode(model, prompt), 'n_predict': NEW_TOKENS, 'temperature': 0, 'cache_prompt': False})
            theirs = answer['choices'][0]['text']
            same = len(os.path.commonprefix([mine, theirs]))
            text = f'llama.cpp on {pathlib.Path(path).name}, prompt {number}: {same} of {len(mine)} characters alike: {theirs[:70]!r}'
            if path == single:
                check(mine == theirs, text)
            else:
                print('note  ', text, flush=True)
    single.unlink()


def main():
    model, source = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    for name, packages, part in (('transformers', ('torch', 'transformers'), lambda: beside_transformers(model)),
                                 ('llama.cpp', ('xllamacpp', 'gguf'), lambda: beside_llamacpp(model, source))):
        try:
            for package in packages:
                __import__(package)
        except ImportError:
            print(f'skip   {name}: {sys.executable} without the package {package}')
            continue
        part()
    print(f'{counts[True]} passed, {counts[False]} failed')
    return 1 if counts[False] else 0


if __name__ == '__main__':
    sys.exit(main())
