#!/usr/bin/env python3
"""compare_rewards.py MATH500.jsonl [GRADE]: the rewards beside Math-Verify (pip install "math-verify" "antlr4-python3-runtime").

Every answer of MATH-500 is given as it stands, in another typography, with another number and with another sign, in a box and in
a sentence. What is right is known by construction, so both graders' mistakes are counted and their disagreements shown.
GRADE: build/grade. Exit status 1 if we take a wrong answer for a right one."""
import json
import re
import subprocess
import sys

try:
    from math_verify import parse, verify
except ImportError:
    print('skip: math-verify is not there')
    sys.exit(0)


def other_typography(answer, k):
    """The same answer as somebody else would write it."""
    def fraction(m):
        return [r'\dfrac{%s}{%s}', r'\frac{%s}{%s}', r'\tfrac{%s}{%s}'][k % 3] % m.groups()
    text = re.sub(r'\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}', fraction, answer)
    text = re.sub(r'\\frac ?(\d)(\d)', r'\\frac{\1}{\2}', text)
    if re.fullmatch(r'-?\\[dt]?frac\{\d+\}\{\d+\}', text) and k % 2:
        text = re.sub(r'\\[dt]?frac\{(\d+)\}\{(\d+)\}', r'\1/\2', text)
    if re.fullmatch(r'-?\d+', text):
        text = [text + '.0', '{:,}'.format(int(text)), r'\text{%s}' % text, text + ' ', '{:,}'.format(int(text)).replace(',', '{,}'), 'x = ' + text][k % 6]
    text = text.replace(r'^\circ', ['', r'^{\circ}', r' \text{ degrees}'][k % 3])
    text = re.sub(r'^\\text\{([a-zA-Z]+)\}$', r'\1', text)
    text = re.sub(r'\\! ?', '', text).replace(r'\mbox', r'\text')
    text = re.sub(r'(?<![\\a-zA-Z])([a-z])\^(\d)', r'\1^{\2}', text)
    if k % 2 and r'\left' not in text and r'\begin' not in text:
        text = re.sub(r'^([(\[])(.*)([)\]])$', r'\\left\1 \2 \\right\3', text)
    return text if text != answer else ' ' + answer + ' '


def other_number(answer):
    found = list(re.finditer(r'\d+', answer))
    if found:
        m = found[-1] if len(found) == 1 or not answer.endswith('^2') else found[0]
        return answer[:m.start()] + str(int(m.group()) + 1) + answer[m.end():]
    words = {'east': 'west', 'even': 'odd', 'ellipse': 'circle', 'Evelyn': 'Navin', 'Navin': 'Evelyn', '(C)': '(D)', '(E)': '(A)', '(B)': '(C)'}
    for word, other in words.items():
        if word in answer:
            return answer.replace(word, other)
    return answer + ' + 1'


def other_sign(answer):
    if re.fullmatch(r'[\d.,\\!]*|0', answer) and set(answer) == {'0'}:
        return '1'
    m = re.search(r'-?(\d|\.\d|\\frac|\\dfrac|\\sqrt|\\pi|[a-z]\b)', answer)
    if not m or r'\text{' in answer[:m.start() + 1]:
        return '-' + answer
    if re.match(r'0(?![\d.])', answer[m.start():]):
        return answer[:m.start()] + '1' + answer[m.end():]
    return answer[:m.start()] + (m.group()[1:] if m.group().startswith('-') else '-' + m.group()) + answer[m.end():]


def cases(path):
    for k, line in enumerate(open(path, encoding='utf-8')):
        gold = json.loads(line)['answer']
        kinds = [('same', gold, 1), ('typography', other_typography(gold, k), 1), ('number', other_number(gold), 0), ('sign', other_sign(gold), 0)]
        for kind, said, want in kinds:
            yield kind, 'boxed', gold, r'So we get $\boxed{%s}$.' % said, want
            yield kind, 'answer', gold, 'So the answer is $%s$.' % said.strip(), want


def main():
    rows = list(cases(sys.argv[1]))
    grade = sys.argv[2] if len(sys.argv) > 2 else 'build/grade'
    lines = ''.join(json.dumps({'reward': r[1], 'answer': r[2], 'response': r[3]}) + '\n' for r in rows)
    done = subprocess.run([grade], input=lines, stdout=subprocess.PIPE, check=True, universal_newlines=True, encoding='utf-8')
    ours = [json.loads(line) for line in done.stdout.splitlines()]
    table, false_ones = {}, 0
    for (kind, place, gold, said, want), our in zip(rows, ours):
        theirs = int(verify(parse('$%s$' % gold), parse(said)))
        count = table.setdefault((kind, place), [0] * 6)
        for i, true in enumerate([True, our['reward'] == theirs, our['reward'] < want, our['reward'] > want, theirs < want, theirs > want]):
            count[i] += true
        false_ones += our['reward'] > want
        if our['reward'] != want or theirs != want:
            print('%s %s: want %d, ours %d, Math-Verify %d: gold %s | %s | read %s and %s'
                  % (kind, place, want, our['reward'], theirs, gold, said, our['gold'], our['said']))
    print('\n%-22s%6s%8s%12s%12s%14s%14s' % ('', 'rows', 'agree', 'we miss', 'false ones', 'theirs miss', 'false ones'))
    for (kind, place), count in sorted(table.items()):
        print('%-22s%6d%8d%12d%12d%14d%14d' % ((kind + ' ' + place,) + tuple(count)))
    return 1 if false_ones else 0


if __name__ == '__main__':
    sys.exit(main())
