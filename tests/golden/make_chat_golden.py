#!/usr/bin/env python3
"""Conversations as transformers' apply_chat_template writes them.

    make_chat_golden.py OUT.json FORMAT=FILE...     FILE: tokenizer_config.json, chat_template.jinja or a text of it

OUT holds the conversations once and, for each format, a text of each and what the generation prompt adds to it.
llama3.1 has its default date, and another one in "dated". Needs transformers and jinja2."""
import json
import random
import sys

import tokenizers
import transformers


def says(role):
    return lambda content: {'role': role, 'content': content}


SYSTEM, USER, ASSISTANT = says('system'), says('user'), says('assistant')
CONVERSATIONS = [
    [USER('Hi there!')],
    [SYSTEM('Be brief.'), USER('Hi there!'), ASSISTANT('Hello.'), USER('What is 2+2?')],
    [SYSTEM(' \n Be brief.\t\n'), USER('\u00a0 \x1cspaces\x1f\u2003\u3000'), ASSISTANT('\n\nkept\u200b '), USER(' \r\n\x0b\x0c ')],
    [USER('a'), ASSISTANT('b')],
    [USER('a'), ASSISTANT('<think>\nLet me see.\n</think>\n\nb'), USER('c'), ASSISTANT('<think>\n\nAgain.\n\n</think>\n\n\nd\n')],
    [USER('a'), ASSISTANT('<think>one</think>b<think>two</think>c'), ASSISTANT('plain'), ASSISTANT('\n\nlast')],
    [USER('a'), ASSISTANT('</think>b'), USER('<tool_response>c</tool_response>'), ASSISTANT('<think>no end')],
    [USER('a'), ASSISTANT('<think>\n</think>\n'), USER('<tool_response>c</tool_response> '), ASSISTANT('x <think> y </think> z')],
    [ASSISTANT('I begin.'), USER('And I?')],
    [ASSISTANT('Nobody asks. <think>Why?</think>')],
    [USER('a'), SYSTEM('late'), USER('b'), ASSISTANT('')],
    [SYSTEM(''), USER(''), ASSISTANT(''), USER('')],
    [USER("quotes ' \" and {{ braces }} and <|im_end|> and <|eot_id|> \\n"), ASSISTANT('ünïcödé 世界 🙂')],
]
PIECES = ['<think>', '</think>', '\n', '\n\n', ' ', 'word', 'two words', '<tool_response>', '</tool_response>', '\u2028', 'é', '.']


def random_conversations(n, seed):
    r = random.Random(seed)
    for _ in range(n):
        talk = [SYSTEM(''.join(r.choices(PIECES, k=r.randint(0, 4))))] if r.random() < 0.4 else []
        for _ in range(r.randint(1, 5)):
            talk.append({'role': r.choice(('user', 'assistant')), 'content': ''.join(r.choices(PIECES, k=r.randint(0, 7)))})
        yield talk


def template_of(path):
    with open(path, encoding='utf-8', newline='') as file:
        text = file.read()
    return json.loads(text)['chat_template'] if path.endswith('tokenizer_config.json') else text


def main():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token='<|begin_of_text|>', eos_token='<|eot_id|>')
    conversations = CONVERSATIONS + list(random_conversations(14, 5))
    formats = {}
    for argument in sys.argv[2:]:
        name, path = argument.split('=', 1)
        template = template_of(path)

        def texts(**settings):
            rows = []
            for talk in conversations:
                plain, prompted = (tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=p, **settings) for p in (False, True))
                if not prompted.startswith(plain):
                    raise SystemExit(f'{name}: the generation prompt changes what stands before it')
                rows.append([plain, prompted[len(plain):]])
            return rows
        formats[name] = texts(**({'date_string': '26 Jul 2024'} if name == 'llama3.1' else {}))
        if name == 'llama3.1':
            formats['dated'] = texts(date_string='01 Feb 2026')[:2]
    with open(sys.argv[1], 'w', encoding='ascii') as out:
        json.dump({'made_by': f'transformers {transformers.__version__}', 'conversations': conversations, 'formats': formats}, out, indent=0)
        out.write('\n')


if __name__ == '__main__':
    main()
