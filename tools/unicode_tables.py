#!/usr/bin/env python3
"""Prints the Unicode table of the tokenizer: which code points are letters, numbers, white space.

    pip install unicodedata2==16.0.0                   without it, the Unicode version of this Python
    python3 tools/unicode_tables.py
    python3 tools/unicode_tables.py UnicodeData.txt    the file of any version, from unicode.org/Public

Each entry is the first code point of a range * 4 + class: 0 other, 1 letter (general category L*),
2 number (N*), 3 white space (property White_Space, the same since Unicode 6.3). A range ends where the next begins.
"""
import sys
try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
COLUMNS = 112


def categories(path):
    """General category of each code point, '' where none is assigned."""
    table = [''] * 0x110000
    first = None
    for line in open(path, encoding='ascii'):
        code, name, category = line.split(';')[:3]
        code = int(code, 16)
        if name.endswith(', First>'):
            first = code
            continue
        for c in range(code if first is None else first, code + 1):
            table[c] = category
        first = None
    return table


def main():
    if len(sys.argv) > 1:
        table, version = categories(sys.argv[1]), 'of ' + sys.argv[1]
    else:
        table, version = [unicodedata.category(chr(c)) for c in range(0x110000)], unicodedata.unidata_version
    entries, last = [], None
    for c, category in enumerate(table):
        kind = 3 if c in SPACE else {'L': 1, 'N': 2}.get(category[:1], 0)
        if kind != last:
            entries.append(c * 4 + kind)
            last = kind
    print(f'/* Unicode {version}, printed by tools/unicode_tables.py: first code point of a range * 4 + class. */')
    print('static const uint32_t tti_unicode[] = {')
    line = '   '
    for entry in entries:
        if len(line) + len(f' {entry},') > COLUMNS:
            print(line)
            line = '   '
        line += f' {entry},'
    print(line.rstrip(','))
    print('};')


if __name__ == '__main__':
    main()
