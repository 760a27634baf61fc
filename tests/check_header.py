#!/usr/bin/env python3
"""tests/check_header.py: what can be counted of thinktuning.h as a page to be read.

    size        bytes and lines of the file
    width       no line over 110 columns
    statements  one statement a line
    spacing     a blank line behind every function
    order       no chapter uses a name that a later chapter defines; computed from the file
    comments    the share of comment lines in each chapter of the implementation, and in the file as a whole

Usage: check_header.py [--table] [FILE]. Prints "ok name" or "FAIL name" and the places; the last line is
"N passed, N failed". --table prints the counts of each chapter instead.
"""
import bisect
import re
import sys

# Bytes and lines of today: who raises them says in CHANGELOG.md what for. The goal is 650,000 and 12,000.
MAX_BYTES, MAX_LINES, MAX_COLUMNS = 981_400, 20_785, 110
LEAST_COMMENTS, LEAST_CHAPTER = 0.12, 0.08
IDENTIFIER = re.compile(r"\b[A-Za-z_]\w*")


def split_text(source):
    """The source with comments blanked out, the source with strings blanked out too, and for every line whether it holds
    a comment. Line breaks stay where they are."""
    token = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    blank = lambda text: re.sub(r"[^\n]", " ", text)
    code = token.sub(lambda m: blank(m[0]) if m[0].startswith("/*") else m[0][0] + blank(m[0][1:-1]) + m[0][-1], source)
    comments = set()
    starts = [0] + [m.end() for m in re.finditer("\n", source)]
    for match in token.finditer(source):
        if match[0].startswith("/*"):
            first = bisect.bisect_right(starts, match.start()) - 1
            comments.update(range(first, first + match[0].count("\n") + 1))
    return code, comments


def chapters_of(lines):
    """(name, first line, line behind the last) of each chapter of the implementation, appendices included."""
    begin = next(i for i, line in enumerate(lines) if line.startswith("#define TTI_IMPLEMENTED"))
    heads = [(i, m[1].strip()) for i, line in enumerate(lines)
             if i > begin and (m := re.match(r"/\* ==== ([\w.]+ [\w ]+?) =", line))]
    heads.append((len(lines), ""))
    return [(name, first, heads[k + 1][0]) for k, (first, name) in enumerate(heads[:-1])]


def definitions_of(code_lines, first, end):
    """Names that lines first..end define at file scope: functions, types, constants, macros, objects."""
    names, depth, k = {}, 0, first
    text = "\n".join(code_lines[first:end])
    for match in re.finditer(r"^[ ]*#[ ]*define[ ]+(\w+)", text, re.M):
        names.setdefault(match[1], first + text.count("\n", 0, match.start()))
    bare = re.sub(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M)
    bare = bare.replace('extern " " {', "").replace('extern "C" {', "")
    # Declarations at depth 0, one at a time: what stands before a body, an initialiser or a semicolon.
    head, begin, body = [], 0, []
    for place, char in enumerate(bare):
        if char == "{":
            depth += 1
            if depth == 1:
                body = []
                continue
        if char == "}":
            depth -= 1
            if depth == 0:
                inside = "".join(body)
                words = "".join(head)
                if re.search(r"\benum\b", words):
                    for item in inside.split(","):
                        if (m := IDENTIFIER.search(item)):
                            names.setdefault(m[0], first + bare.count("\n", 0, begin))
                if re.search(r"\)\s*$", words) and not re.search(r"=\s*$", words):
                    define_head(words, names, first + bare.count("\n", 0, begin), True)
                    head = []
                else:
                    head.append(" {} ")
                continue
        if depth:
            body.append(char)
            continue
        if not head or not "".join(head).strip():
            begin = place
        if char == ";":
            define_head("".join(head), names, first + bare.count("\n", 0, begin), False)
            head = []
        else:
            head.append(char)
    return names


def define_head(words, names, line, has_body):
    words = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", words)
    tag = re.match(r"\s*(?:typedef\s+)?(?:struct|enum|union)\s+(\w+)\s*(?:\{\}|$)", words)
    if tag:
        names.setdefault(tag[1], line)
    if words.lstrip().startswith("typedef"):
        name = re.search(r"\(\s*\*\s*(\w+)\s*\)", words) or re.search(r"(\w+)\s*(?:\[[^\]]*\])?\s*$", words)
        if name and "{}" in words or name and "(" in words:
            names.setdefault(name[1], line)
        return
    if has_body:
        name = re.search(r"(\w+)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*$", words)
        if name:
            names.setdefault(name[1], line)
    elif "=" in words:
        name = re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)*=", words)
        if name:
            names.setdefault(name[1], line)


def several_statements(code_line):
    """Does a line, comments and strings blanked out, hold more than one statement?"""
    text = re.sub(r"\bfor\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "for()", code_line)
    # Small records, and what only keeps a compiler quiet or ends a case, may share a line.
    text = re.sub(r"^(\s*(?:typedef|static const))? ?struct (?:\w+ )?\{[^{}]*\}", "{}", text)
    text = re.sub(r"\(void\)\w+;|;(?= break;)", "", text)
    text = re.sub(r"\{[^{}]*\}", lambda m: "{}" if m[0].count(";") <= 1 else m[0], text)
    is_macro = text.lstrip().startswith("#") or text.rstrip().endswith("\\")
    return not is_macro and re.search(r";\s*[^\s};]", text) is not None


def unspaced_ends(lines):
    """Ends of functions without a blank line behind them. A row of functions of one line each may stand together, and a
    directive may close the region."""
    rows = set(one_liners(lines))
    for i in function_ends(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if following.strip() and not following.startswith("#") and not (lines[i] != "}" and i + 1 in rows):
            yield i


def function_ends(lines):
    """Lines that end a function at file scope: a brace in the first column, or a body on one line."""
    for i, line in enumerate(lines):
        one_line = re.match(r"(?:static|TT_API|TTI_\w+)\b.*\)\s*\{.*\}$", line) and line.count("{") == line.count("}")
        if line == "}" or one_line:
            yield i


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    path = arguments[0] if arguments else "thinktuning.h"
    source = open(path, encoding="utf-8").read()
    lines = source.split("\n")
    code, comment_lines = split_text(source)
    code_lines = code.split("\n")
    chapters = chapters_of(lines)
    failures = {}

    def fail(check, line, text):
        failures.setdefault(check, []).append("%s:%d: %s" % (path, line + 1, text))

    if len(source.encode()) > MAX_BYTES:
        fail("size", 0, "%d bytes, at most %d" % (len(source.encode()), MAX_BYTES))
    if len(lines) > MAX_LINES:
        fail("size", 0, "%d lines, at most %d" % (len(lines), MAX_LINES))
    for i, line in enumerate(lines):
        if len(line) > MAX_COLUMNS:
            fail("width", i, "%d columns" % len(line))
        if several_statements(code_lines[i]):
            fail("statements", i, line.strip())
    for i in unspaced_ends(lines):
        fail("spacing", i, "a function's end without a blank line behind it")

    defined = []
    for number, (name, first, end) in enumerate(chapters):
        for word, line in definitions_of(code_lines, first, end).items():
            defined.append((word, number, line))
    # A tag that is only declared ("struct tti_node;") is an opaque pointer to those above: known from there on.
    where = {}
    for word, number, line in defined:
        if re.match(r"tti?_|TTI?_", word):
            where.setdefault(word, (number, line))
    for number, (name, first, end) in enumerate(chapters):
        seen = set()
        for i in range(first, end):
            for word in IDENTIFIER.findall(code_lines[i]):
                if word in where and where[word][0] > number and word not in seen:
                    # An appendix may stand behind what uses it: the chapter declares the one function that it takes.
                    declared = r"^static [^;={}]*\b%s\([^;{}]*\);" % word
                    if chapters[where[word][0]][0][0].isalpha() and re.search(declared, "\n".join(code_lines[first:i + 1]), re.M):
                        continue
                    before = code_lines[i][:code_lines[i].find(word)].rstrip()
                    if before.endswith(".") or before.endswith("->"):
                        continue
                    seen.add(word)
                    fail("order", i, "%s uses %s of %s" % (name, word, chapters[where[word][0]][0]))

    def share_of(first, end):
        """Lines that are comment alone, of those that are not empty."""
        used = [i for i in range(first, end) if lines[i].strip()]
        return sum(i in comment_lines and not code_lines[i].strip() for i in used) / max(1, len(used))

    table = []
    for name, first, end in chapters:
        share = share_of(first, end)
        table.append((name, end - first, len("\n".join(lines[first:end]).encode()), share))
        if share < LEAST_CHAPTER:
            fail("comments", first, "%s: %.3f of its lines, at least %.2f" % (name, share, LEAST_CHAPTER))
    whole = share_of(0, len(lines))
    if whole < LEAST_COMMENTS:
        fail("comments", 0, "the file: %.3f of its lines, at least %.3f" % (whole, LEAST_COMMENTS))

    if "--table" in sys.argv:
        print("| chapter | lines | KB | comment lines |\n|---|---:|---:|---:|")
        print("| manual and API | %d | %d | %.3f |" % (chapters[0][1], len("\n".join(lines[:chapters[0][1]]).encode()) // 1000,
                                                 share_of(0, chapters[0][1])))
        for name, count, size, share in table:
            print("| %s | %d | %d | %.3f |" % (name, count, size // 1000, share))
        print("| whole | %d | %d | %.3f |" % (len(lines), len(source.encode()) // 1000, whole))
        return 0
    checks = ["size", "width", "statements", "spacing", "order", "comments"]
    for check in checks:
        places = failures.get(check, [])
        print("%s %s%s" % ("FAIL" if places else "ok", check, ": %d" % len(places) if places else ""))
        for place in places[:400 if "--all" in sys.argv else 8]:
            print("  " + place)
    print("%d passed, %d failed" % (len(checks) - len(failures), len(failures)))
    return 1 if failures else 0


def one_liners(lines):
    return [i for i in function_ends(lines) if lines[i] != "}"]


if __name__ == "__main__":
    sys.exit(main())
