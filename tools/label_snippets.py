#!/usr/bin/env python3
"""label_snippets.py --out DIR: a labelled set out of this machine's own Python: of which package of the standard library
is a piece of source text?

Writes DIR/train.jsonl and DIR/test.jsonl of {"text", "label"} and DIR/labels.txt, the names in the order of their
numbers. No file gives to both: whole files are held out. Imports, comments and blank lines are left out, and the names of
the packages are replaced by "package", for they would give the answer away. The same Python gives the same bytes.

    tools/label_snippets.py --out data/snippets
    tools/prepare_data.py --tokenizer MODEL --special-tokens --no-append-eos --label-key label \\
        --label-names "$(cat data/snippets/labels.txt)" --out data/snippets/train data/snippets/train.jsonl

and the same for test.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import sysconfig
import tokenize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import guarded_work  # noqa: E402
from guarded_work import DataFault, UsageFault, one_line  # noqa: E402

# Those that Debian's python3 has with enough source in more than one file.
PACKAGES = ("asyncio", "distutils", "email", "encodings", "http", "importlib", "lib2to3", "logging", "multiprocessing", "unittest",
            "urllib", "xml")  # fmt: skip
IMPORT = re.compile(r"\s*(?:import|from)\s")
SECONDS_A_FILE, FILE_MEMORY = 30, 2 * guarded_work.GIB


def without_comments(text: str, path: Path) -> list[str]:
    """The lines that are left when imports, comments and blank lines are gone. Lines of docstrings stay."""
    lines = text.splitlines()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError) as error:
        raise DataFault(f"{path}: no Python that can be read ({one_line(error, 100)}): leave its package out of --packages") from None
    return [line.rstrip() for line in lines if line.strip() and not IMPORT.match(line)]


def sources_of(root: Path, package: str, names: re.Pattern) -> dict[str, list[str]]:
    """By path below the root: what the files say, `names` hidden."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        guarded_work.step("reading it", path, SECONDS_A_FILE, FILE_MEMORY, "leave its package out of --packages")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # tests of encodings
        found[path.relative_to(root).as_posix()] = [names.sub("package", line) for line in without_comments(text, path)]
    return found


def ordered(text: str) -> bytes:
    """A place that has nothing to do with what the text says."""
    return hashlib.sha256(text.encode()).digest()


def held_out(sources: dict[str, list[str]], share: float) -> set[str]:
    """Whole files, by the digest of their names, until they hold this share of the lines; never all."""
    wanted, taken = share * sum(map(len, sources.values())), set()
    for name in sorted(sources, key=ordered)[:-1]:
        if wanted <= 0:
            break
        if taken and len(sources[name]) > 2 * wanted:
            continue  # another one is nearer to the share
        taken.add(name)
        wanted -= len(sources[name])
    return taken


def pieces(lines: list[str], height: int, stride: int) -> list[str]:
    return ["\n".join(lines[at : at + height]) for at in range(0, len(lines) - height + 1, stride)]


def chosen(texts: list[str], most: int) -> list[str]:
    """Without repetitions, at most so many, spread over all by digest."""
    return sorted(dict.fromkeys(texts), key=ordered)[:most]


def labelled_set(a: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    train, test, seen = [], [], set()
    names = re.compile(r"\b(?:" + "|".join(a.packages) + r")\b", re.IGNORECASE)
    for package in a.packages:
        sources = sources_of(a.root, package, names)
        if len(sources) < 2:
            raise DataFault(f"{a.root / package}: {len(sources)} files of Python, wanted two or more, one to learn from and one to "
                            "hold out: name other packages with --packages")  # fmt: skip
        apart = held_out(sources, a.test_share)
        learned = [text for name in sorted(sources.keys() - apart) for text in pieces(sources[name], a.lines, a.stride)]
        asked = [text for name in sorted(apart) for text in pieces(sources[name], a.lines, a.lines)]
        train += [{"text": text, "label": package} for text in chosen(learned, a.most_train)]
        test += [{"text": text, "label": package} for text in chosen(asked, a.most_test)]
        seen.update(learned)
    test = [row for row in test if row["text"] not in seen]  # what stands in many files, such as a licence
    for rows in (train, test):
        rows.sort(key=lambda row: ordered(row["label"] + row["text"]))
    return train, test


def write(a: argparse.Namespace) -> None:
    if len(set(a.packages)) < 2 or not all(re.fullmatch(r"\w+", package) for package in a.packages):
        raise UsageFault(f"--packages {one_line(','.join(a.packages), 80)}: wanted two names or more, such as email,xml")
    train, test = labelled_set(a)
    for name, rows in (("train", train), ("test", test)):
        without = sorted(set(a.packages) - {row["label"] for row in rows})
        if without:
            raise DataFault(f"{a.root / without[0]}: no piece of {a.lines} lines for {name}.jsonl: set --lines lower, or name other "
                            "packages with --packages")  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (a.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        most = max(sum(row["label"] == package for row in rows) for package in a.packages)
        print(f"{a.out / name}.jsonl: {len(rows)} rows of {len(a.packages)} classes, the commonest {100 * most / len(rows):.1f} %")
    (a.out / "labels.txt").write_text(",".join(a.packages) + "\n", encoding="utf-8")


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text}, wanted 1 to 1000000")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}, wanted a number between 0 and 1")
    return value


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--root", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="where the packages are (default: %(default)s)")
    parser.add_argument("--packages", type=lambda text: text.split(","), default=list(PACKAGES), metavar="A,B,...",
                        help="the classes, in the order of their numbers (default: " + ",".join(PACKAGES) + ")")
    parser.add_argument("--lines", type=count, default=8, help="of a piece (default: 8)")
    parser.add_argument("--stride", type=count, default=3, help="lines from one piece to learn from to the next (default: 3)")
    parser.add_argument("--test-share", type=share, default=0.2, metavar="F", help="of the lines of a package, in whole files (default: 0.2)")
    parser.add_argument("--most-train", type=count, default=1200, metavar="N", help="pieces of a package (default: 1200)")
    parser.add_argument("--most-test", type=count, default=300, metavar="N", help="the same of those held out (default: 300)")
    a = parser.parse_args(arguments)
    absent = guarded_work.absent_folders([a.out])
    return guarded_work.answered("label_snippets", lambda: write(a), lambda: guarded_work.remove_empty(absent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
