#!/usr/bin/env python3
"""Small questions with something to reason about, for models that can half do them.

    questions.py KIND FOLDER [--n 729] [--seed 3]     writes FOLDER/questions.jsonl, shift.jsonl, teacher.txt, turns.jsonl, worked.jsonl
    questions.py --list

questions.jsonl   {"question", "answer"} a line, all different, shuffled: for thinktune --data, whose last records are held out
shift.jsonl       128 of the same kind that are harder in one respect: larger numbers or one more of them
turns.jsonl       two worked turns with a direct answer, {"role", "content"} a line, for thinktune --few-shot
worked.jsonl      five worked turns whose answers go step by step, for thinktune --worked
teacher.txt       five worked examples of feedback, step by step, for thinktune --teacher-examples

A kind is one function: it draws a question of a size (0 = the usual, 1 = shifted) and returns the question, its answer, the steps
that lead there, and a wrong answer that a hasty reader gives. Standard library only; the same seed writes the same bytes."""
import argparse
import calendar
import json
import pathlib
import random
import sys

NAMES = 'Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Noah Olga Paul'.split()
THINGS = 'apples books coins eggs marbles pencils shells stamps stones tickets'.split()
WORDS = ('banana letter pepper coffee balloon cheese success committee mississippi tomorrow different little summer yellow '
         'dinner happy mirror rabbit kitten button puzzle cotton ribbon valley').split()
LONG_WORDS = 'assessment bookkeeper possession millennium occurrence successfully tennessee accommodation'.split()


def adding(numbers):
    """3 + 4 = 7, 7 + 6 = 13"""
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f'{total} + {number} = {total + number}')
        total += number
    return ', '.join(steps), total


def near(draw, answer, least=0):
    return max(least, answer + draw.choice([-4, -3, -2, -1, 1, 2, 3, 4]))


def sum_of(draw, count, size):
    numbers = [draw.randint(1, 9) if size == 0 else draw.randint(10, 29) for _ in range(count)]
    steps, total = adding(numbers)
    return f"What is {' + '.join(map(str, numbers))}?", total, steps, near(draw, total, 1)


def sum3(draw, size):
    return sum_of(draw, 3, size)


def sum4(draw, size):
    return sum_of(draw, 4, size)


def word1(draw, size):
    """One step: something is given or taken away."""
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    a, b = draw.randint(11, 29) + 30 * size, draw.randint(3, 9) + 20 * size
    if draw.random() < 0.5:
        return (f'{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?', a + b,
                f'{a} + {b} = {a + b}', near(draw, a + b))
    return f'{name} has {a} {thing} and gives {b} away. How many {thing} are left?', a - b, f'{a} - {b} = {a - b}', near(draw, a - b)


def word2(draw, size):
    """Two steps: boxes of equal size, then some are lost."""
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    boxes, each = draw.randint(2, 5) + 3 * size, draw.randint(3, 9)
    product = boxes * each
    lost = draw.randint(1, min(9, product - 1))
    return (f'{name} has {boxes} boxes with {each} {thing} each and loses {lost} {thing}. How many {thing} are left?', product - lost,
            f'{boxes} * {each} = {product}, {product} - {lost} = {product - lost}', near(draw, product - lost))


def pages(draw, size):
    """A difference with a trap: both ends count."""
    first = draw.randint(2, 40) + 60 * size
    last = first + draw.randint(3, 19)
    return (f'{draw.choice(NAMES)} reads from page {first} to page {last}, both included. How many pages is that?', last - first + 1,
            f'{last} - {first} = {last - first}, {last - first} + 1 = {last - first + 1}', last - first)


def letters(draw, size):
    word = draw.choice(LONG_WORDS if size else WORDS)
    letter = draw.choice(sorted(set(word)))
    count = word.count(letter)
    return (f'How many times does the letter {letter} occur in the word {word}?', count,
            f"{', '.join(c + (' yes' if c == letter else ' no') for c in word)}: {count}", near(draw, count, 0))


def middle(draw, size):
    """Sorting, asked so that the answer is a number."""
    numbers = draw.sample(range(1, 100 if size == 0 else 1000), 3 if size == 0 else 5)
    ordered = sorted(numbers)
    return (f"Which number stands in the middle when {', '.join(map(str, numbers))} are put in order?", ordered[len(ordered) // 2],
            f"in order: {', '.join(map(str, ordered))}", numbers[len(numbers) // 2] if numbers != ordered else ordered[0])


def decimals(draw, size):
    """9.11 or 9.8: the longer one looks larger."""
    whole, tenth, tail = draw.randint(1, 9 + 90 * size), draw.randint(2, 9), draw.randint(1, 9)
    short, other = f'{whole}.{tenth}', f'{whole}.{draw.randint(0, tenth - 1)}{tail}'
    pair = [short, other]
    draw.shuffle(pair)
    return (f'Which is larger, {pair[0]} or {pair[1]}?', short, f'{short} = {short}0, {short}0 is larger than {other}', other)


def dates(draw, size):
    """The calendar: a day of the month, some days later, over its end."""
    month = draw.randint(1, 12)
    days = calendar.monthrange(2025, month)[1]
    day, later = draw.randint(days - 12, days), draw.randint(4, 12) + 10 * size
    later = max(later, days - day + 1)
    name, total = calendar.month_name[month], day + later
    return (f'It is {name} {day}. {name} has {days} days. Which day of the next month is it {later} days later?', total - days,
            f'{day} + {later} = {total}, {total} - {days} = {total - days}', total if total < 60 else days)


def change(draw, size):
    """Money: three prices are added, and taken from what is paid."""
    prices = [draw.randint(1, 6) + 3 * size for _ in range(2)]
    paid = 20 if size == 0 else 50
    steps, total = adding(prices)
    return (f'{draw.choice(NAMES)} buys things for {prices[0]} and {prices[1]} dollars and pays with {paid} dollars. '
            'How many dollars come back?', paid - total, f'{steps}, {paid} - {total} = {paid - total}', near(draw, paid - total))


KINDS = {kind.__name__: kind for kind in (sum3, sum4, word1, word2, pages, letters, middle, decimals, dates, change)}


def different(draw, kind, n, size, taken):
    """Up to n questions that are not in taken; fewer where a kind has no more."""
    rows = []
    for _ in range(40 * n):
        row = kind(draw, size)
        if row[0] not in taken:
            taken.add(row[0])
            rows.append(row)
        if len(rows) == n:
            break
    return rows


def example(row, right):
    question, answer, steps, wrong = row
    return (f"[{'self-agreement' if right else 'self-conflict'}]\nQuestion:\n{question}\nResponse:\nThe answer is "
            f'{answer if right else wrong}.\nFeedback:\n<reason>Let me check: {steps}.</reason>\n'
            f'<phrase>So the answer is {answer}. #### {answer}</phrase>\n')


SYSTEM = """A teacher that goes step by step.

[system]
You read a question and a student's response to it. Go through it step by step and write feedback in exactly this form:
<reason>steps</reason>
<phrase>the answer</phrase>
"""


def write_lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kind', nargs='?', choices=sorted(KINDS), metavar='KIND')
    parser.add_argument('folder', nargs='?', metavar='FOLDER')
    parser.add_argument('--n', type=int, default=729)
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--list', action='store_true', help='the kinds, with a question of each')
    given = parser.parse_args()
    if given.list:
        for name, kind in KINDS.items():
            question, answer, steps, wrong = kind(random.Random(given.seed), 0)
            print(f'{name:9} {question}  {answer} ({steps}; hasty: {wrong})')
        return
    if not given.kind or not given.folder:
        parser.error('KIND and FOLDER are missing; the kinds: ' + ' '.join(KINDS))
    if given.n < 16:
        parser.error(f'--n is {given.n}, expected at least 16')
    draw, kind, taken = random.Random(given.seed), KINDS[given.kind], set()
    folder = pathlib.Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = different(draw, kind, 7, 0, taken)             # never among the questions
    rows = different(draw, kind, given.n, 0, taken)
    if len(rows) < given.n:
        print(f'{given.kind} has only {len(rows)} different questions', file=sys.stderr)
    write_lines(folder / 'questions.jsonl', [{'question': q, 'answer': str(a)} for q, a, _, _ in rows])
    write_lines(folder / 'shift.jsonl', [{'question': q, 'answer': str(a)} for q, a, _, _ in different(draw, kind, 128, 1, taken)])
    write_lines(folder / 'turns.jsonl', [{'role': role, 'content': content} for q, a, _, _ in shown[5:]
                                         for role, content in (('user', q), ('assistant', f'The answer is {a}.'))])
    write_lines(folder / 'worked.jsonl', [{'role': role, 'content': content} for q, a, steps, _ in shown[:5] for role, content in
                                          (('user', q), ('assistant', f'Let me check: {steps}. So the answer is {a}. #### {a}'))])
    right = [False, True, False, False, False]
    (folder / 'teacher.txt').write_text(SYSTEM + ''.join('\n' + example(*pair) for pair in zip(shown, right)), encoding='utf-8')


if __name__ == '__main__':
    main()
