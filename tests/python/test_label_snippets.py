"""tools/label_snippets.py: a labelled set out of packages, with nothing in both parts and nothing that gives a name away."""

import json
import re

import pytest
import warm_python
from limbeck_runner import REPOSITORY


def label(*arguments):
    return warm_python.completed([REPOSITORY / "tools" / "label_snippets.py", *arguments], timeout=120)


def read(folder):
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snippets")
    done = label("--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_this_machines_library_gives_enough_of_it(made):
    rows, names = read(made), (made / "labels.txt").read_text().strip().split(",")
    assert len(names) >= 10 and len(rows["test"]) >= 2000 and 10_000 <= len(rows["train"]) <= 20_000
    for part in rows.values():
        counts = [sum(row["label"] == name for row in part) for name in names]
        assert sum(counts) == len(part) and min(counts) > 50 and max(counts) < 0.2 * len(part)


def test_nothing_is_in_both_and_no_name_is_left(made):
    rows, names = read(made), (made / "labels.txt").read_text().strip().split(",")
    assert not {row["text"] for row in rows["train"]} & {row["text"] for row in rows["test"]}
    named = re.compile(r"\b(?:" + "|".join(names) + r")\b", re.IGNORECASE)
    for row in rows["train"] + rows["test"]:
        assert not named.search(row["text"]) and row["text"].count("\n") == 7
        assert not re.search(r"^\s*(?:import|from)\s", row["text"], re.MULTILINE)


def test_the_same_python_gives_the_same_bytes(made, tmp_path):
    assert label("--out", tmp_path).returncode == 0
    for name in ("train.jsonl", "test.jsonl", "labels.txt"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def package(root, name, files):
    (root / name).mkdir(parents=True)
    for file, count in files.items():
        text = "import os\n# a comment\n" + "".join(f"{file[0]}{name}{i} = 'alpha says # {i}'  # {name}\n\n" for i in range(count))
        (root / name / file).write_text(text)


def test_whole_files_are_held_out(tmp_path):
    for name in ("alpha", "beta"):
        package(tmp_path / "lib", name, {"a.py": 40, "b.py": 40, "c.py": 40, "d.py": 40, "e.py": 40})
    done = label("--out", tmp_path / "out", "--root", tmp_path / "lib", "--packages=alpha,beta", "--lines=4", "--stride=2")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out")
    for name in ("alpha", "beta"):
        files = {part: {row["text"][0] for row in rows[part] if row["label"] == name} for part in rows}
        assert len(files["test"]) == 1 and len(files["train"]) == 4 and not files["test"] & files["train"]
    [first] = [row["text"] for row in rows["train"] + rows["test"] if row["text"].startswith("aalpha0 ")]
    assert first == "\n".join(f"aalpha{i} = 'package says # {i}'" for i in range(4))  # of a string, # is no comment


@pytest.mark.parametrize(
    "flags, code, said",
    [
        (["--packages=alpha"], 2, "--packages alpha: wanted two names or more, such as email,xml"),
        (["--packages=alpha,../x"], 2, "wanted two names or more"),
        (["--packages=alpha,gone"], 3, "gone: 0 files of Python, wanted two or more"),
        (["--packages=alpha,torn"], 3, "a.py: no Python that can be read"),
        (["--packages=alpha,beta", "--lines=900"], 3, "no piece of 900 lines for train.jsonl: set --lines lower"),
    ],
)
def test_refusals_are_one_line(tmp_path, flags, code, said):
    for name in ("alpha", "beta", "torn"):
        package(tmp_path / "lib", name, {"a.py": 9, "b.py": 9})
    (tmp_path / "lib" / "torn" / "a.py").write_text("x = (\n'''")
    done = label("--out", tmp_path / "out", "--root", tmp_path / "lib", *flags)
    assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()
