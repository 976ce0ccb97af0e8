#!/usr/bin/env python3
"""Writes modules/text/characters/character_tables.inc: what Hugging Face's tokenizers take for a letter, a digit, punctuation;
and modules/text/jinja/case_tables.inc: what Python's str.upper, title and lower do beyond one character for another.

Their library mixes Unicode versions (8 for BERT's categories, 12 for normal forms, 16 for regular expressions), so each
set is asked of the library itself, one code point at a time, instead of being guessed from a version number.
    .venv/bin/python tools/character_tables.py       after a new version of tokenizers (tools/requirements.txt)
"""

import ctypes
import ctypes.util
import pathlib
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
PROPERTIES = ("L", "Lu", "Ll", "Lm", "Lo", "M", "N", "Nd", "P", "S", "Han")
TEXT = pathlib.Path(__file__).resolve().parents[1] / "modules/text"
OUTPUT, CASES = TEXT / "character_tables.inc", TEXT / "jinja/case_tables.inc"


def ranges(code_points):
    found = []
    for c in sorted(code_points):
        if found and found[-1][1] in (c - 1, 0xD7FF if c == 0xE000 else -1):
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def bert(**switched_on):
    names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
    return normalizers.BertNormalizer(**{name: switched_on.get(name, False) for name in names})


def alone_among(pre_tokenizer, neighbour):
    return [c for c in CODE_POINTS if len(pre_tokenizer.pre_tokenize_str(neighbour + chr(c) + neighbour)) == 3]


class Utf8proc:
    def __init__(self):
        self._library = ctypes.CDLL(ctypes.util.find_library("utf8proc"))

    def lower(self, c):
        return self._library.utf8proc_tolower(c)

    def mapped(self, text, compatible):
        library, out = self._library, ctypes.POINTER(ctypes.c_char)()
        raw = text.encode()
        options = 2 | 16 | (4 if compatible else 0)  # STABLE, DECOMPOSE, COMPAT
        length = library.utf8proc_map(raw, ctypes.c_ssize_t(len(raw)), ctypes.byref(out), options)
        return out[:length].decode()


def beyond_normal_forms(proc):
    """Code points that utf8proc decomposes or reorders and the tokenizers, whose tables are older, leave alone."""
    nfd, nfkd, beyond = normalizers.NFD(), normalizers.NFKD(), set()
    for c in CODE_POINTS:
        character = chr(c)
        if c != 0 and (nfkd.normalize_str(character) != proc.mapped(character, True)):
            beyond.add(c)
            # A pair that only newer tables compose stays apart when its second half is a stranger.
            beyond.update(ord(part) for part in unicodedata.normalize("NFD", character)[1:])
        for probe in ("\u0334", "\u0345"):  # classes 1 and 240: one of them moves past any mark
            for text in (f"a{character}{probe}", f"a{probe}{character}"):
                if c != 0 and nfd.normalize_str(text) != proc.mapped(text, False):
                    beyond.add(c)
    return beyond


def sets():
    clean, accents = bert(clean_text=True), bert(strip_accents=True)
    word = pre_tokenizers.Whitespace()
    yield "kControl", [c for c in CODE_POINTS if clean.normalize_str(f"a{chr(c)}a") == "aa"]
    yield "kNonspacingMark", [c for c in CODE_POINTS if accents.normalize_str("a" + chr(c)) == "a"]
    yield "kPunctuation", alone_among(pre_tokenizers.Punctuation(), "a")
    yield "kNumeric", alone_among(pre_tokenizers.Digits(individual_digits=True), "a")
    yield "kWord", [c for c in CODE_POINTS if len(word.pre_tokenize_str(f"a{chr(c)}a")) == 1]
    for name in PROPERTIES:
        yield "kProperty" + name, alone_among(pre_tokenizers.Split(Regex(r"\p{%s}" % name), "isolated"), "\x01")


def table(lines, kind, name, entries):
    lines.append(f"constexpr {kind} {name}[] = {{")
    row = "   "
    for entry in entries:
        text = " {" + ", ".join(value if isinstance(value, str) else f"0x{value:X}" for value in entry) + "},"
        if len(row) + len(text) > 118:
            lines.append(row)
            row = "   "
        row += text
    lines.extend([row, "};"])


def is_cased(character):
    return (character + "A").title()[-1] == "a"


def is_case_ignorable(character):
    """Probed with the one rule that asks for it, the sigma at the end of a word."""
    if is_cased(character):
        return ("AΣ" + character).lower()[1] == "ς"
    return ("AΣ" + character + "A").lower()[1] == "σ"


def write_cases(proc):
    lines = [f"// Written by tools/character_tables.py from Python's Unicode {unicodedata.unidata_version}."]
    for name, change in (("kFullUppercase", str.upper), ("kFullTitlecase", str.title)):
        longer = [(c, change(chr(c))) for c in CODE_POINTS if len(change(chr(c))) > 1]
        escaped = [(c, '"' + "".join(f"\\x{byte:02X}" for byte in text.encode()) + '"') for c, text in longer]
        table(lines, "FullCase", name, escaped)
    different = [c for c in CODE_POINTS if len(chr(c).lower()) == 1 and ord(chr(c).lower()) != proc.lower(c)]
    assert not different, "str.lower is utf8proc's but for I with a dot"
    table(lines, "CaseRange", "kCased", ranges(c for c in CODE_POINTS if is_cased(chr(c))))
    table(lines, "CaseRange", "kCaseIgnorable", ranges(c for c in CODE_POINTS if is_case_ignorable(chr(c))))
    CASES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    proc, lines = Utf8proc(), [f"// Written by tools/character_tables.py from tokenizers {tokenizers.__version__}."]
    write_cases(proc)
    for name, members in (*sets(), ("kBeyondNormalForms", beyond_normal_forms(proc))):
        table(lines, "Range", name, ranges(members))
    lower = normalizers.Lowercase()
    told = [(c, lower.normalize_str(chr(c))) for c in CODE_POINTS if c]
    assert [c for c, text in told if len(text) != 1] == [0x130], "only I with a dot becomes two characters"
    table(lines, "Mapping", "kLowercase", [(c, ord(t)) for c, t in told if len(t) == 1 and ord(t) != proc.lower(c)])
    OUTPUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
