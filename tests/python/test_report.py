"""The report of made-up runs: what it says is what the runs hold, and the page needs nothing but itself."""

import json
import math
import os
import re
import statistics
from html.parser import HTMLParser

import pytest
import warm_python
from limbeck_runner import REPOSITORY

VOID = {"meta", "br", "hr", "img", "input", "link", "circle", "line", "path"}
CONTRACT = {
    "modules": [
        {"module": "teacher.layers.*.mlp.up_proj", "role": "mlp", "storage": "float16", "in": "float16",
         "compute": "float32", "out": "float16", "device": "cpu", "modules": 8, "parameters": 6291456,
         "bytes": 12582912, "from": "my.ini:3"},
    ],
    "casts": [
        {"place": f"student.layers.{i}.mlp (input)", "from": "float32", "to": "bfloat16", "phase": "train", "count": 1,
         "bytes": 1500000} for i in range(4)
    ],
    "memory": {"teacher weights": 115885056, "peak of a training step": 947301420},
}  # fmt: skip


class Page(HTMLParser):
    """Checks that tags close in order, and gathers the rows of tables and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.loads, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}> at {self.getpos()}"
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and any(tag in self.open for tag in ("td", "th")):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row and row[0].startswith(first))


def write_run(folder, lines, recipe="seed = 1\n", contract=CONTRACT):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.ini").write_text(recipe)
    if contract is not None:
        (folder / "contract.json").write_text(json.dumps(contract))
    return folder


def training_lines(perplexity, steps=20, **extra):
    lines = [
        {"step": s, "phase": "train", "loss": 5 / s, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 9000 + s, **extra}
        for s in range(1, steps + 1)
    ]
    return lines + [{"step": steps, "phase": "eval", "eval.perplexity": perplexity}]


def report(*arguments):
    return warm_python.completed([REPOSITORY / "tools" / "report.py", *arguments], timeout=60)


def made(folder, *arguments):
    output = folder / "page.html"
    done = report(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    return Page(text), text


def test_the_table_is_the_mean_and_spread_over_seeds(tmp_path):
    distilled, alone = [20.0, 22.0, 27.0], [30.0, 31.0, 32.0]
    for seed in range(3):
        lines = training_lines(distilled[seed])
        lines.append({"step": 20, "phase": "eval", "eval.teacher_perplexity": 12.5, "eval.top1_agreement": 0.75})
        write_run(tmp_path / f"distilled-seed{seed}", lines)
        write_run(tmp_path / f"alone-seed{seed}", training_lines(alone[seed]))
    page, text = made(tmp_path, *sorted(tmp_path.glob("*seed*")))
    assert page.row("teacher") == ["teacher", "12.5", "–"]
    assert page.row("distilled") == ["distilled 3 runs", f"23 ± {statistics.stdev(distilled):.2g}", "0.75 ± 0"]
    assert page.row("alone") == ["alone 3 runs", "31 ± 1", "–"]
    assert re.findall(r'class="best">([0-9.]+)', text) == ["23"]


def test_the_table_for_the_terminal_and_what_is_compared(tmp_path):
    # A loss is the sum of a run's own terms: shown, but no run wins by it.
    for name, perplexity, loss in (("distilled", 20.0, 9.0), ("alone", 30.0, 1.0)):
        lines = training_lines(perplexity)
        lines.append({"step": 20, "phase": "eval", "loss": loss, "top1_agreement": perplexity / 100, "targets": 4096})
        write_run(tmp_path / name, lines)
    done = report(tmp_path / "distilled", tmp_path / "alone", "--table")
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert rows == [["perplexity", "top1", "agreement"], ["distilled", "20", "0.2"], ["alone", "30", "0.3"],
                    [str(tmp_path / "distilled" / "report.html")]]  # fmt: skip
    text = (tmp_path / "distilled" / "report.html").read_text()
    assert re.findall(r'class="best">([0-9.]+)', text) == ["20", "0.3"]
    assert Page(text).row("distilled") == ["distilled", "20", "0.2", "9"]
    assert "4096" not in text


def evaluated(folder, validation, targets, perplexity, **more):
    lines = training_lines(0)[:-1]
    lines.append({"step": 20, "phase": "eval", "perplexity": perplexity, "targets": targets, **more})
    return write_run(folder, lines, recipe=f"[data]\nvalidation = {validation}  # my.ini:3\n")


def test_different_validation_sets_are_never_averaged(tmp_path):
    first = evaluated(tmp_path / "mine-1", "/data/wiki/val", 521, 279.7, teacher_perplexity=20.0)
    second = evaluated(tmp_path / "mine-2", "/data/news/val", 600, 327.1, teacher_perplexity=30.0)
    page, text = made(tmp_path, first, second)
    assert [row for row in page.rows if row[0] == "mine"] == [["mine", "279.7"], ["mine", "327.1"]]
    assert [row for row in page.rows if row[0] == "teacher"] == [["teacher", "20"], ["teacher", "30"]]
    assert "On wiki/val, 521 tokens" in text and "On news/val, 600 tokens" in text
    assert 'class="best"' not in text
    drawn = re.findall(r'aria-label="(eval.perplexity[^"]*) over steps"', text)
    assert drawn == ["eval.perplexity on wiki/val, 521 tokens", "eval.perplexity on news/val, 600 tokens"]
    done = report(first, second, "--table", "--output", tmp_path / "x.html")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("mine")]
    assert rows == [["mine", "279.7"], ["mine", "327.1"]]
    # The same set is one row, however the folder is called in the two recipes' comments.
    third = evaluated(tmp_path / "mine-3", "/data/wiki/val", 521, 280.7, teacher_perplexity=20.0)
    page, text = made(tmp_path, first, second, third)
    assert page.row("mine")[:2] == ["mine 2 runs", "280.2 ± 0.71"]


def test_a_resumed_run_on_another_set_shows_both(tmp_path):
    run = evaluated(tmp_path / "run", "/data/val", 521, 300.0)
    with open(run / "metrics.jsonl", "a") as file:
        for step, perplexity in ((20, 290.0), (30, 200.0)):  # what is done again stands once: the last
            targets = 521 if step == 20 else 640
            line = {"step": step, "phase": "eval", "perplexity": perplexity, "targets": targets}
            file.write(json.dumps(line) + "\n")
    page, text = made(tmp_path, run)
    assert [row for row in page.rows if row[0] == "run"] == [["run", "290"], ["run", "200"]]
    assert "On run before its set changed, 521 tokens" in text and "On val, 640 tokens" in text


def test_timings_of_checkpoints_stand_apart_from_learning_curves(tmp_path):
    lines = training_lines(8.0)
    lines.append({"step": 16, "phase": "checkpoint", "saved_step": 10, "bytes": 406978, "write_seconds": 4e-4})
    page, text = made(tmp_path, write_run(tmp_path / "run", lines))
    heads = [(m.start(), m.group(1)) for m in re.finditer(r"<h2>([^<]+)</h2>", text)]

    def head_of(name):
        at = text.index(f'aria-label="{name} over steps"')
        return [head for place, head in heads if place < at][-1]

    assert {head_of(name) for name in ("loss", "eval.perplexity", "lr", "grad_norm")} == {"Curves"}
    assert head_of("tokens_per_s") == "Speed and memory"
    assert {head_of(name) for name in ("checkpoint.bytes", "checkpoint.write_seconds")} == {"Checkpoints"}
    assert "saved_step" not in text


def test_single_points_are_seen(tmp_path):
    # One evaluation; a step between two that were not finite; a step that was done twice.
    lines = [{"step": s, "phase": "train", "loss": None if s in (4, 6) else 1.0 * s} for s in range(1, 40)]
    lines += [{"step": 39, "phase": "eval", "perplexity": 7.0}, {"step": 39, "phase": "eval", "perplexity": 8.0}]
    page, text = made(tmp_path, write_run(tmp_path / "run", lines))
    assert "<title>run: step 5</title>" in text
    [point] = re.findall(r'aria-label="eval.perplexity over steps".*?<circle class="dot s0" cx="([0-9.]+)"', text)
    assert 100 < float(point) < 300  # clear of both edges of the picture
    assert "<title>run: step 39</title>" in text


def test_every_name_gets_a_curve_with_its_values(tmp_path):
    run = write_run(tmp_path / "run", training_lines(8.0, **{"kd": 0.5, "hidden.3": 0.25}))
    page, text = made(tmp_path, run)
    drawn = re.findall(r'aria-label="([^"]+) over steps"', text)
    assert drawn == ["loss", "eval.perplexity", "lr", "grad_norm", "kd", "hidden.3", "tokens_per_s"]
    curve = re.search(r'aria-label="loss over steps".*?d="M([^"]+)"', text, re.DOTALL).group(1)
    points = [tuple(map(float, pair.split(","))) for pair in curve.split("L")]
    assert len(points) == 20
    assert points[0][0] < points[-1][0] and points[0][1] < points[-1][1]  # y grows downwards: the loss falls
    # 5 / step: linear between the first and the last point.
    share = (points[4][1] - points[0][1]) / (points[-1][1] - points[0][1])
    assert share == pytest.approx((5 - 1) / (5 - 0.25), abs=2e-3)


def test_what_is_not_finite_is_shown_and_breaks_nothing(tmp_path):
    lines = training_lines(8.0)
    lines[4]["loss"] = None
    lines.append({"step": 21, "phase": "train", "loss": None})
    page, text = made(tmp_path, write_run(tmp_path / "run", lines))
    assert "run: not finite at step 5" in text and "run: not finite at step 21" in text
    assert "nan" not in text.lower().replace("tenant", "")
    assert "values not finite" in text


def test_one_point_one_value_and_huge_ranges_are_drawn(tmp_path):
    lines = [{"step": 7, "phase": "train", "loss": 3.0, "constant": 2, "zero": 0.0, "loss_scale": 65536}]
    page, text = made(tmp_path, write_run(tmp_path / "one", lines))
    assert text.count("<circle") == 4
    wide = [{"step": s, "phase": "train", "grad_norm": 10.0**-s, "small": 1 + 1e-12 * s} for s in range(1, 30)]
    page, text = made(tmp_path, write_run(tmp_path / "wide", wide))
    assert "log" in page.texts


def test_long_runs_are_averaged_with_their_extremes(tmp_path):
    lines = [{"step": s, "phase": "train", "loss": math.sin(s)} for s in range(1, 50_001)]
    page, text = made(tmp_path, write_run(tmp_path / "long", lines))
    assert 'class="band s0"' in text
    assert len(text) < 60_000


def test_the_contract_is_told_once_for_runs_that_share_it(tmp_path):
    first = write_run(tmp_path / "a", training_lines(8.0))
    second = write_run(tmp_path / "b", training_lines(8.0), contract={"command": "check", "result": CONTRACT})
    page, text = made(tmp_path, first, second)
    assert page.row("teacher.layers") == [
        "teacher.layers.*.mlp.up_proj ×8", "mlp", "float16", "float16", "float32", "float16", "cpu", "6,291,456",
        "12.6 MB", "my.ini:3",
    ]  # fmt: skip
    assert page.row("student.layers") == ["student.layers.*.mlp (input)", "float32", "bfloat16", "train", "4", "6 MB"]
    assert text.count("<summary>Contract") == 1
    assert "947 MB" in text
    other = write_run(tmp_path / "c", training_lines(8.0), contract={**CONTRACT, "casts": []})
    page, text = made(tmp_path, first, second, other)
    assert "<summary>Contract: a, b</summary>" in text and "<summary>Contract: c</summary>" in text
    assert "None: no tensor changes its dtype." in text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    nasty = '<script>alert("1")</script>&amp;'
    lines = training_lines(8.0, **{'<img src="x">': 1.0})
    run = write_run(tmp_path / "<b>run", lines, recipe=nasty)
    page, text = made(tmp_path, f"{nasty}={run}", "--title", nasty)
    assert page.loads == []
    assert "<script" not in text and "<img" not in text and "<b>run" not in text
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert nasty in "".join(page.texts)  # as text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_a_killed_run_is_read_up_to_its_last_whole_line(tmp_path):
    run = write_run(tmp_path / "killed", training_lines(8.0))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "ph')
    page, text = made(tmp_path, run)
    assert "lines not readable" in text


def test_the_default_place_is_the_first_run(tmp_path):
    run = write_run(tmp_path / "run", training_lines(8.0), contract=None)
    done = report(run)
    assert done.returncode == 0 and done.stdout.strip() == str(run / "report.html")
    assert "No contract.json" in (run / "report.html").read_text()
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "recipe.ini", "report.html"]


@pytest.mark.parametrize(
    "make, code, said",
    [
        (lambda f: f / "missing", 2, "missing: no such folder, wanted a run folder with metrics.jsonl"),
        (lambda f: f, 3, "no metrics.jsonl, wanted a run folder: name the one given to --run"),
        (lambda f: write_run(f / "empty", []), 3, "metrics.jsonl: no line with a step and a value"),
        (lambda f: write_run(f / "bad", training_lines(1.0), contract=[1]), 3, "wanted what `limbeck check --json`"),
    ],
)
def test_refusals_are_one_line_with_a_next_step(tmp_path, make, code, said):
    done = report(make(tmp_path))
    assert done.returncode == code
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_report_replaces_no_input_and_no_device(tmp_path):
    run = write_run(tmp_path / "run", training_lines(8.0))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(run / "metrics.jsonl")
    os.link(run / "recipe.ini", tmp_path / "hard.ini")
    before = {path.name: path.read_text() for path in run.iterdir()}
    for target, code, words in ((tmp_path / "fifo", 6, "no regular file"), (tmp_path, 6, "is a folder"),
                                (tmp_path / "link", 2, "which is read"), (tmp_path / "hard.ini", 2, "which is read")):
        done = report(run, "--output", target)
        assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1, done
    assert (tmp_path / "fifo").is_fifo() and {path.name: path.read_text() for path in run.iterdir()} == before
    for _ in range(2):
        assert report(run).returncode == 0  # an older report is replaced
