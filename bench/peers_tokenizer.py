#!/usr/bin/env python3
"""The packages tokenizers and tiktoken on the texts of bench_tokenizer, one thread.

    python3 bench/peers_tokenizer.py TOKENIZER.json TEXT...          tokenizers
    python3 bench/peers_tokenizer.py NAME.tiktoken TEXT...           tiktoken, r50k, cl100k or o200k by its file name
    python3 bench/peers_tokenizer.py --train TEXT [VOCAB_SIZE]
"""
import os
import sys
import time

os.environ['RAYON_NUM_THREADS'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'


def fastest(encode, text, runs=5):
    size, best = len(text.encode()), 0
    for _ in range(runs):
        begin = time.perf_counter()
        encode(text)
        best = max(best, size / (time.perf_counter() - begin) / 1e6)
    return best


def encoder(path):
    if path.endswith('.tiktoken'):
        import tiktoken
        import tiktoken.load
        import tiktoken_ext.openai_public as public
        public.load_tiktoken_bpe = lambda *_args, **_names: tiktoken.load.load_tiktoken_bpe(path)
        encoding = tiktoken.Encoding(**getattr(public, os.path.basename(path)[:-len('.tiktoken')])())
        return lambda text: encoding.encode(text, allowed_special='all')
    import tokenizers
    return tokenizers.Tokenizer.from_file(path).encode


def main():
    if sys.argv[1] == '--train':
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        text = open(sys.argv[2], encoding='utf-8', newline='').read()
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=int(sys.argv[3]) if len(sys.argv) > 3 else 32000, min_frequency=2, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        begin = time.perf_counter()
        tokenizer.train_from_iterator([text], trainer)
        print(f'PEER tokenizers train text={sys.argv[2]} vocab={tokenizer.get_vocab_size()} seconds={time.perf_counter() - begin:.2f}')
        if len(sys.argv) > 4:
            tokenizer.save(sys.argv[4])
        return
    encode = encoder(sys.argv[1])
    for path in sys.argv[2:]:
        text = open(path, encoding='utf-8', newline='').read()
        print(f'PEER {sys.argv[1]} text={path} encode={fastest(encode, text):.1f} MB/s')


if __name__ == '__main__':
    main()
