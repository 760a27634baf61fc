#!/usr/bin/env python3
"""Compares the ids of build/tokenize with those of the packages tokenizers and tiktoken.

    make build/tokenize && pip install tokenizers tiktoken
    python3 tests/parity_tokenizer.py                  short: 20000 strings per vocabulary
    python3 tests/parity_tokenizer.py --full           1000000 per vocabulary
    python3 tests/parity_tokenizer.py --strings N --only NAME --seed N

Vocabularies: the files under TT_DATA (or ../shared/data), tiktoken's ranks as tools/convert_weights.py (which needs numpy)
converts them, and tokenizers trained here with every pattern, which also
are compared with BpeTrainer merge by merge. Each code point (every 31st without --full) is encoded as well. What is missing is skipped
by name. Written against tokenizers 0.23.3 and tiktoken 0.14.0. The last line is "N passed, N failed".
"""
import argparse
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TMP = ROOT / 'build' / 'tmp'
TOOL = ROOT / 'build' / 'tokenize'
counts = {'passed': 0, 'failed': 0}

WORDS = ("the of and a to in is I that it for was on are as with his they at be this have from or one had by word but not "
         "what all were we when your can said there use an each which she do how their if will up other about out many "
         "Hello World JSON HTTPServer camelCase snake_case iPhone McDonald McDONALD ABCdef ABC abcDEF naïve façade Ünïcödé "
         "don't it's we'll I'm they've you're she'd DON'T IT'S WE'LL 'S 'T 'rE 'Ve 'M 'lL 'D 'ſ o'clock rock'n'roll ''s ' 's "
         "привет мир ΑΒΓ αβγ Σίσυφος שלום مرحبا नमस्ते สวัสดี こんにちは 世界 안녕하세요 你好 ｈｅｌｌｏ ǅ ǈ ʰ ª º ß ẞ ﬁ ſt İ ı").split()
PIECES = WORDS + [
    ' ', ' ', ' ', ' ', '  ', '   ', '    ', '        ', '\n', '\n\n', '\r\n', '\r', '\t', '\t\t', ' \n', '\n ', ' \n \n  ', '\x0b', '\x0c', '\x85',
    '\u00a0', '\u1680', '\u2003', '\u2028', '\u202f', '\u3000', '\u200b', '\u200d', '\ufeff', '1', '12', '123', '1234', '1234567890', '3.14', '１２３', '²', '½', 'Ⅷ', '٣', '४', '𝟘',
    '.', ',', '!', '?', '...', '-', '--', '/', '//', '\\', '"', '(', ')', '[]', '{}', ';', ':', '=', '==', '!=', '#', '@', '$', '%', '&&', '|', '<', '>', '</', '~', '`', '^', '_', '*', '+',
    '\u0301', '\u0323', '\u0308\u0301', 'e\u0301', 'a\u0323\u0302', '\u0345', '\u1100\u1161', '\u1161', '\u11a8', '\u1100\u1161\u11a8', '가\u11a8', '\u212b', '\u0958', '\u0344', '\u2126', '\uf900',
    '\U0001d15e', '\U0002f800', '\u0b47\u0b3e', '\u0f71\u0f72', '\U00011099\U000110ba', '🙂', '👩\u200d👩\u200d👧', '🇩🇪', '👍🏽', '\u2581', '\u2581\u2581', '\ufffd', '\ue000', '\U0010ffff',
    'def f(x):\n    return x\n', 'if (a[i] != b) { i++; }', '<a href="x">', '\x01', '\x04', '\x06', '\x13', '\x1d', '\x7f', '\u00ad', 'ÁÂ', '<0x41>', '<s>', '</s>', '<unk>', '<|endoftext|>', '<|im_start|>', '<|im_end|>',
    '<|', '|>', '<|end', '<|begin_of_text|>', '<|eot_id|>', '<|start_header_id|>', '<|fim_prefix|>', '<|endofprompt|>', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']


def texts(n, seed, extra=()):
    """n random texts without NUL: known difficulties, any code points, and both."""
    r = random.Random(seed)
    pieces, choice, choices = PIECES + list(extra) * 3, r.random, r.choices
    for _ in range(n):
        kind = choice()
        length = 1 + int(choice() * choice() * 24)
        if kind < 0.75:
            yield ''.join(choices(pieces, k=length))
        elif kind < 0.85:
            yield ' '.join(choices(WORDS, k=length))
        else:
            top = (0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000)[int(choice() * 6)]
            code = [1 + int(choice() * (top - 1)) for _ in range(length)]
            text = ''.join(chr(c) for c in code if not 0xD800 <= c < 0xE000)
            yield text + choices(pieces)[0] + text[:2]


def ours(path, batch, options=('--no-bos',)):
    data = b''.join(text.encode() + b'\0' for text in batch)
    run = subprocess.run([TOOL, 'encode', '-0', '--tokenizer', path, *options], input=data, capture_output=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.decode(errors='replace')[-500:])
    return [[int(i) for i in line.split()] for line in run.stdout.decode().split('\n')[:-1]]


def verdict(name, bad, n, show):
    counts['failed' if bad else 'passed'] += 1
    print(f'{"FAIL" if bad else "ok"} {name}: {n - len(bad)} of {n} equal', flush=True)
    for item in bad[:5]:
        print('   ', *show(item))


def compare(name, path, reference, stream, options=('--no-bos',)):
    bad, n = [], 0
    while True:
        batch = list(itertools.islice(stream, 50000))
        if not batch:
            break
        n += len(batch)
        mine, theirs = ours(path, batch, options), reference(batch)
        if len(mine) != len(batch):
            raise RuntimeError(f'{name}: {len(mine)} lines for {len(batch)} texts')
        if mine != theirs:
            bad += [(t, a, b) for t, a, b in zip(batch, mine, theirs) if a != b]
    verdict(name, bad, n, lambda x: (repr(x[0])[:200], 'ours', x[1][:24], 'theirs', x[2][:24]))


def compare_decoding(name, path, tokenizer, stream):
    """All texts as one: half a character, a space at the start and special tokens decode alike."""
    text = ' '.join(stream)
    ids = ours(path, [text])[0]
    run = subprocess.run([TOOL, 'decode', '--tokenizer', path], input=' '.join(map(str, ids)).encode(), capture_output=True, check=True)
    mine, theirs = run.stdout.decode(errors='replace'), tokenizer.decode(ids, skip_special_tokens=False)      # as the reference shows lost bytes
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
    verdict(f'{name}, decoded', [at] if mine != theirs else [], 1, lambda i: ('at', i, mine[max(i - 20, 0):i + 20], theirs[max(i - 20, 0):i + 20]))


def code_points(step):
    """Each code point (of step) alone, in a word, behind a space, and as a mark between marks."""
    for c in range(1, 0x110000, step):
        if not 0xD800 <= c < 0xE000:
            yield chr(c)
            yield f'a{chr(c)}b {chr(c)}1{chr(c)}'
    for c in (*range(0x80, 0x3400, step), *range(0xA000, 0x20000, step), *range(0x2F800, 0x2FA20, step)):
        if not 0xD800 <= c < 0xE000:
            yield f'a{chr(c)}\u0345{chr(c)}\u0323'


def hf(tokenizer, bos=False):
    return lambda batch: [e.ids for e in tokenizer.encode_batch(batch, add_special_tokens=bos)]


def published(args, data):
    import tokenizers
    for name in ('gpt2', 'neox', 'smollm2', 'llama3', 'qwen2.5', 'llama2'):
        if args.only and args.only != name:
            continue
        path = data / 'tokenizers' / name / 'tokenizer.json'
        if not path.exists():
            print(f'skip {name}: no {path}')
            continue
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values()][:40]
        compare(name, path, hf(tokenizer), texts(args.strings, args.seed, special))
        compare(f'{name}, document', path, hf(tokenizer, True), texts(args.strings // 20, args.seed + 1, special), ())
        compare(f'{name}, code points', path, hf(tokenizer), code_points(args.step))
        compare_decoding(name, path, tokenizer, texts(args.strings // 20, args.seed + 3, special))
        tokenizer.encode_special_tokens = True
        compare(f'{name}, special as text', path, hf(tokenizer), texts(args.strings // 20, args.seed + 2, special), ('--no-bos', '--special', 'text'))


def metaspace(args, data):
    """Llama 2's vocabulary behind what other files of SentencePiece's kind have: Metaspace, in all its ways, or NFC first."""
    import tokenizers
    source = data / 'tokenizers' / 'llama2' / 'tokenizer.json'
    if args.only and args.only != 'metaspace':
        return
    if not source.exists():
        print(f'skip metaspace: no {source}')
        return
    TMP.mkdir(parents=True, exist_ok=True)
    file = json.loads(source.read_text(encoding='utf-8'))
    marks, decoders = file['normalizer']['normalizers'], file['decoder']['decoders']

    def one(name, n, normalizer, pre_tokenizer, decoder):
        path = TMP / 'parity_metaspace.json'
        path.write_text(json.dumps({**file, 'normalizer': normalizer, 'pre_tokenizer': pre_tokenizer, 'decoder': {'type': 'Sequence', 'decoders': decoder}}))
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        extra = ['<s>', '</s>', '<unk>', ' <s>', '<s> ', '\u2581<s>', ' ', '  ']
        compare(name, path, hf(tokenizer), texts(n, args.seed, extra))
        compare_decoding(name, path, tokenizer, texts(args.strings // 20, args.seed + 1, extra))
        compare_decoding(f'{name}, space first', path, tokenizer, [' ', 'a'])
    for scheme in ('first', 'always', 'never'):
        for split in (False, True):
            for nfc in (False, True):
                one(f'metaspace {scheme}{" split" * split}{" NFC" * nfc}', args.strings if scheme == 'first' and not split and not nfc else args.strings // 10,
                    {'type': 'NFC'} if nfc else None, {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': scheme, 'split': split},
                    decoders[:3] if scheme == 'never' else decoders)
    old = {'type': 'Metaspace', 'replacement': '\u2581'}
    one('metaspace by default', args.strings // 10, None, old, decoders)
    one('metaspace add_prefix_space', args.strings // 10, None, {**old, 'add_prefix_space': False, 'prepend_scheme': 'never', 'split': False}, decoders)
    one('NFC before marks', args.strings // 10, {'type': 'Sequence', 'normalizers': [{'type': 'NFC'}, *marks]}, None, decoders)


def ranks(args, data):
    import tiktoken
    import tiktoken.load
    import tiktoken_ext.openai_public as public
    for name in ('r50k', 'cl100k', 'o200k'):
        path = data / 'tokenizers' / 'tiktoken' / f'{name}_base.tiktoken'
        if args.only and args.only != name:
            continue
        if not path.exists():
            print(f'skip {name}: no {path}')
            continue

        def load(_path, expected_hash=None):
            return tiktoken.load.load_tiktoken_bpe(str(path))
        public.load_tiktoken_bpe = load
        encoding = tiktoken.Encoding(**getattr(public, f'{name}_base')())

        def reference(batch):
            return encoding.encode_batch(batch, allowed_special='all')
        special = sorted(encoding.special_tokens_set)
        made = TMP / f'ranks_{name}'
        shutil.rmtree(made, ignore_errors=True)
        TMP.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, ROOT / 'tools' / 'convert_weights.py', path, made], check=True, capture_output=True)
        path = made / 'tokenizer.json'
        compare(name, path, reference, texts(args.strings, args.seed, special))
        compare(f'{name}, code points', path, reference, code_points(args.step))


def trained(args, data):
    """Trains here and there on the same text; then the file made here must encode alike in both."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    TMP.mkdir(parents=True, exist_ok=True)
    corpus = '\n'.join(texts(4000, 7)) + ' the quick brown fox ' * 50
    source = data / 'vectors' / 'minbpe' / 'taylorswift.txt'
    if source.exists():
        corpus += source.read_text(encoding='utf-8')
    text = TMP / 'parity.txt'
    text.write_bytes(corpus.encode())
    for kind in ('gpt2', 'whitespace', 'bytes', 'smollm2', 'llama3', 'qwen2', 'cl100k', 'o200k', 'tekken'):
        if args.only and args.only not in ('trained', kind):
            continue
        path = TMP / f'parity_{kind}.json'
        vocab_size = 600 if kind == 'bytes' else 6000
        subprocess.run([TOOL, 'train', '--input', text, '--vocab-size', str(vocab_size), '--all-bytes', '--pretokenizer', kind,
                        '--special', '<|end|>', '--out', path], check=True, capture_output=True)
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        other = tokenizers.Tokenizer(models.BPE())
        other.pre_tokenizer = tokenizer.pre_tokenizer
        other.decoder = decoders.ByteLevel()
        other.train_from_iterator([corpus], trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=['<|end|>'],
                                                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        mine, theirs = json.loads(path.read_text())['model'], json.loads(other.to_str())['model']
        rows = [(i, a, b) for i, (a, b) in enumerate(itertools.zip_longest(mine['merges'], theirs['merges'])) if a != b]
        verdict(f'trained {kind}, merges', rows, max(len(mine['merges']), len(theirs['merges'])), lambda x: x)
        verdict(f'trained {kind}, vocabulary', [x for x in theirs['vocab'].items() if mine['vocab'].get(x[0]) != x[1]], len(theirs['vocab']), lambda x: x)
        compare(f'trained {kind}', path, hf(tokenizer), texts(args.strings // 10 if kind != 'bytes' else args.strings // 50, args.seed, ['<|end|>']))


def added(args, data):
    """Added tokens with all flags, with and without normalizers."""
    import tokenizers
    base = TMP / 'parity_gpt2.json'
    if args.only and args.only != 'added':
        return
    if not base.exists():
        print('skip added: no tokenizer was trained')
        return
    contents = ['<a>', '<a>b', '<ab', 'ab', 'abc', ' x', 'é', 'e\u0301', '\u2581q', '<b>', '  ', 'Zz', '\n', '9', '<c>', 'the']
    for normalizer in (None, {'type': 'NFC'}):
        for seed in range(12):
            r = random.Random(seed)
            file = json.loads(base.read_text())
            file['normalizer'] = normalizer
            size = max(file['model']['vocab'].values()) + 1
            chosen = r.sample(contents, 8)
            spaces = any(content[0].isspace() for content in chosen)
            for content in chosen:
                flags = {key: r.random() < 0.4 for key in ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')}
                flags['rstrip'] &= not spaces        # a token in the space behind another makes the reference panic
                file['added_tokens'].append({'id': file['model']['vocab'].get(content, size), 'content': content, **flags})
                size += content not in file['model']['vocab']        # the reference leaves no holes
            file['pre_tokenizer']['add_prefix_space'] = seed % 3 == 2
            path = TMP / 'parity_added.json'
            path.write_text(json.dumps(file))
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            stream = texts(max(args.strings // 20, 1000), args.seed + seed, contents * 6 + [' <a>', '<a> ', '_', 'x'])
            compare(f'added {normalizer and "NFC"} {seed}', path, hf(tokenizer), stream)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--strings', type=int, default=0)
    parser.add_argument('--only', default='')
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    args.strings = args.strings or (1000000 if args.full else 20000)
    args.step = 1 if args.full else 31
    data = pathlib.Path(os.environ.get('TT_DATA', ROOT.parent / 'shared' / 'data'))
    if not TOOL.exists():
        print(f'skip parity_tokenizer: no {TOOL}, make build/tokenize')
    for package, parts in (('tokenizers', (published, metaspace, trained, added)), ('tiktoken', (ranks,))):
        try:
            __import__(package)
        except ImportError:
            print(f'skip parity_tokenizer: no Python package {package}')
            continue
        for part in parts if TOOL.exists() else ():
            part(args, data)
    print(f'{counts["passed"]} passed, {counts["failed"]} failed')
    return 1 if counts['failed'] else 0


if __name__ == '__main__':
    sys.exit(main())
