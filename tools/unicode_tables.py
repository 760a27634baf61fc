#!/usr/bin/env python3
"""Prints the Unicode tables of the tokenizer (appendix B of the header): classes of characters, and what NFC needs.

    pip install unicodedata2==16.0.0
    python3 tools/unicode_tables.py

Classes are those of Unicode 16.0.0, which the pattern engines of `tokenizers` 0.23 and `tiktoken` 0.14 hold.
Normalization is that of Unicode 9.0.0, which the NFC of `tokenizers` holds: what later versions added to it
(AFTER_9) is left as it is. tests/parity_tokenizer.py compares both with the packages, code point by code point.
"""
import unicodedata2 as unicodedata

SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
OTHER, LETTER, NUMBER, WHITE, UPPER, LOWER, MARK, CASED = range(8)
CLASS = {'Lm': LETTER, 'Lo': LETTER, 'Lu': UPPER, 'Lt': UPPER, 'Ll': LOWER,
         'Mn': MARK, 'Mc': MARK, 'Me': MARK, 'Nd': NUMBER, 'Nl': NUMBER, 'No': NUMBER}
HANGUL = range(0xAC00, 0xD7A4)
AFTER_9 = {
    0x7FD, *range(0x897, 0x8A0), *range(0x8CA, 0x8D4), 0x9FE, 0xC3C, 0xD3B, 0xD3C, 0xEBA, 0x1715, *range(0x1ABF, 0x1ACF),
    *range(0x1DF6, 0x1DFB), 0xA82C, 0x105C9, 0x105E4, *range(0x10D24, 0x10D28), *range(0x10D69, 0x10D6E), 0x10EAB, 0x10EAC,
    *range(0x10EFD, 0x10F00), *range(0x10F46, 0x10F51), *range(0x10F82, 0x10F86), 0x11070, 0x1133B, 0x11383, 0x11385,
    0x1138E, 0x11391, 0x113C5, 0x113C7, 0x113C8, *range(0x113CE, 0x113D1), 0x1145E, 0x11839, 0x1183A, 0x11938, 0x1193D,
    0x1193E, 0x11943, 0x119E0, 0x11A34, 0x11A47, 0x11A99, 0x11D42, 0x11D44, 0x11D45, 0x11D97, 0x11F41, 0x11F42,
    *range(0x16121, 0x16129), 0x1612F, *range(0x16D68, 0x16D6B), 0x16FF0, 0x16FF1, 0x1E08F, *range(0x1E130, 0x1E137), 0x1E2AE,
    *range(0x1E2EC, 0x1E2F0), *range(0x1E4EC, 0x1E4F0), 0x1E5EE, 0x1E5EF}
COLUMNS = 100


def digits(value):
    """A number in digits of five bits, the highest first; all but the last have bit 5 set. Digit d is the character d + 48, but
    'p' and 'q' stand for the backslash and the question mark, which mean something to a C compiler."""
    out, more = '', 0
    while True:
        out = chr((value & 31 | more) + 48) + out
        value, more = value >> 5, 32
        if not value:
            return out.replace('\\', 'p').replace('?', 'q')


def show(comment, name, numbers, group=1):
    """Rows of `group` numbers; the first of a row is written as its difference to the first of the row before."""
    print(f'/* {comment} */\nstatic const char *const {name}[] = {{')
    line, last = '', 0
    for i in range(0, len(numbers), group):
        row = [numbers[i] - last, *numbers[i + 1:i + group]]
        last = numbers[i]
        part = ''.join(map(digits, row))
        if len(line) + len(part) > COLUMNS:
            print(f'    "{line}",')
            line = ''
        line += part
    print(f'    "{line}", NULL}};\n')


def ranges(value_of, shift):
    """First code point of each range << shift | its value; a range ends where the next begins."""
    entries, last = [], None
    for c in range(0x110000):
        value = value_of(c)
        if value != last:
            entries.append(c << shift | value)
            last = value
    return entries


def class_of(c):
    return WHITE if c in SPACE else CLASS.get(unicodedata.category(chr(c)), OTHER)


def classes():
    """As ranges, but U L U L ... becomes one CASED range: its even offsets are upper case, the odd ones lower."""
    table = [class_of(c) for c in range(0x110000)]
    c = 0
    while c < 0x110000:
        end = c
        while table[end:end + 2] == [UPPER, LOWER]:
            end += 2
        if end - c >= 4:
            table[c:end] = [CASED] * (end - c)
        c = max(end, c + 1)
    for c in range(1, 0x110000):               # two such ranges side by side would look like one
        assert not (table[c - 1] == CASED and table[c] == CASED and class_of(c - 1) == class_of(c))
    return ranges(table.__getitem__, 3)


def decomposition(c):
    """The canonical one, one step deep, as one or two code points; () if there is none."""
    text = unicodedata.decomposition(chr(c))
    if not text or text[0] == '<' or c in AFTER_9 or c in HANGUL:
        return ()
    return tuple(int(part, 16) for part in text.split())


def main():
    composed, one_way = [], []
    for c in range(0x110000):
        parts = decomposition(c)
        if parts:
            both = unicodedata.normalize('NFC', chr(c)) == chr(c)
            (composed if both else one_way).extend([c, *parts] if len(parts) == 2 else [c, *parts, 0])
    others = [c for c in range(0x110000) if unicodedata.category(chr(c)) == 'No']
    show(f'Unicode {unicodedata.unidata_version}: first code point of a range * 8 + class.', 'tti_class_lines', classes())
    show('Category No, numbers that are no digits: first and last of each range.', 'tti_other_number_lines',
         [c for c in others if not {c - 1, c + 1} <= {*others} for c in [c] * (1 + ((c - 1 not in others) and (c + 1 not in others)))])
    show('Unicode 9.0.0: first code point of a range * 256 + canonical combining class.', 'tti_combining_lines',
         ranges(lambda c: 0 if c in AFTER_9 else unicodedata.combining(chr(c)), 8))
    show('Canonical decompositions that NFC composes again: c = a b.', 'tti_composed_lines', composed, 3)
    show('Those that it does not: c = a b, or c = a where b is 0.', 'tti_one_way_lines', one_way, 3)


if __name__ == '__main__':
    main()
