#!/usr/bin/env python3
"""report.py [LABEL=]RUN_DIR ... [--output FILE]: what runs did, as one HTML page that needs nothing else.

Curves of everything metrics.jsonl holds, the evaluation table over seeds, the dtype contract, the memory plan and the
resolved recipe. Runs whose names differ in a number at the end only (distilled-seed0, distilled-seed1) are one row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
import report_contract as contract  # noqa: E402
from report_numbers import bytes_text, mean_and_spread, number, shown  # noqa: E402

USAGE, INPUT = 2, 3  # exit codes, as the program's
BOOKKEEPING = {"step", "phase", "seconds"}
LOWER_IS_BETTER = re.compile(r"perplexity|kl|ce$")
# What means the same in every run. A loss is the sum of a run's own terms and marks no winner.
COMPARABLE = re.compile(r"^(?:perplexity|kl|ce|accuracy|cosine|top\d+_\w+)$")
FIRST = ["loss", "eval.perplexity", "eval.loss"]  # charts and columns shown before all others


class ReportError(Exception):
    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass
class Run:
    folder: Path
    name: str
    group: str
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # NaN where the value was not finite
    steps: int = 0
    unread: int = 0
    contract: dict | None = None
    recipe: str | None = None

    def last(self, name: str) -> float | None:
        return next((value for _, value in reversed(self.series.get(name, [])) if math.isfinite(value)), None)


def group_of(name: str) -> str:
    return re.sub(r"[-_. ]*(?:seed)?[-_. ]*\d+$", "", name) or name


def read_metrics(run: Run) -> None:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        raise ReportError(INPUT, f"{run.folder}: no metrics.jsonl, wanted a run folder: name the one given to --run")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError):
            run.unread += 1  # the last line of a run that was killed while writing
            continue
        run.steps = max(run.steps, step)
        for name, value in entry.items():
            if name in BOOKKEEPING or isinstance(value, (str, bool, list, dict)):
                continue
            if name == "targets" and entry.get("phase") == "eval":
                continue
            shown = name if entry.get("phase") != "eval" or name.startswith("eval.") else f"eval.{name}"
            run.series.setdefault(shown, []).append((step, math.nan if value is None else float(value)))
    if not run.series:
        raise ReportError(INPUT, f"{path}: no line with a step and a value, wanted the lines of a run")


def read_run(argument: str) -> Run:
    label, _, folder = argument.rpartition("=")
    if not Path(folder).is_dir() and Path(argument).is_dir():
        label, folder = "", argument
    path = Path(folder)
    if not path.is_dir():
        raise ReportError(USAGE, f"{folder}: no such folder, wanted a run folder with metrics.jsonl")
    name = label or path.resolve().name
    run = Run(path, name, group_of(name))
    read_metrics(run)
    if (path / "contract.json").is_file():
        try:
            read = json.loads((path / "contract.json").read_text(encoding="utf-8"))
            run.contract = read.get("result", read)  # `check --json` wraps it
        except (ValueError, AttributeError) as error:
            raise ReportError(INPUT, f"{path / 'contract.json'}: {error}; wanted what `limbeck check --json` writes")
    if (path / "recipe.ini").is_file():
        run.recipe = (path / "recipe.ini").read_text(encoding="utf-8", errors="replace")
    return run


# The comparison


def is_teacher(group: str) -> bool:
    return group.lower() == "teacher"


def evaluation_rows(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
    """By row and metric, the last value of each run. A teacher measured beside its student is a row of its own."""
    rows: dict[str, dict[str, list[float]]] = {}
    teacher: dict[str, list[float]] = {}
    for run in runs:
        for name in run.series:
            if not name.startswith("eval.") or (value := run.last(name)) is None:
                continue
            metric = re.sub(r"^student[._]", "", name.removeprefix("eval."))
            if metric.startswith(("teacher_", "teacher.")):
                teacher.setdefault(metric[len("teacher_") :], []).append(value)
            else:
                rows.setdefault(run.group, {}).setdefault(metric, []).append(value)
    if teacher and not any(is_teacher(group) for group in rows):
        # Each run measured the same teacher: its spread is none of the seeds'.
        rows = {"teacher": {metric: [statistics.fmean(values)] for metric, values in teacher.items()}, **rows}
    return rows


def metrics_of(rows: dict[str, dict[str, list[float]]]) -> list[str]:
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    return sorted(metrics, key=lambda metric: (not COMPARABLE.match(metric), metric != "perplexity"))


def plain_table(runs: list[Run]) -> str:
    """What means the same in every run, for a terminal."""
    rows = evaluation_rows(runs)
    metrics = [metric for metric in metrics_of(rows) if COMPARABLE.match(metric)]
    lines = [f"{'':<24}" + "".join(f"{metric.replace('_', ' '):>20}" for metric in metrics)]
    for group, row in rows.items():
        cells = "".join(f"{plain(mean_and_spread(row[m], m)) if m in row else '–':>20}" for m in metrics)
        lines.append(f"{group:<24}{cells}")
    return "\n".join(lines)


def plain(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


def evaluation_table(runs: list[Run]) -> str:
    rows = evaluation_rows(runs)
    metrics = metrics_of(rows)
    if not metrics:
        return "<p>No evaluation was made.</p>"
    seeds = {group: sum(run.group == group for run in runs) for group in rows}
    best = {}
    for metric in metrics:
        students = {g: statistics.fmean(r[metric]) for g, r in rows.items() if metric in r and not is_teacher(g)}
        if len(students) > 1 and COMPARABLE.match(metric):
            best[metric] = (min if LOWER_IS_BETTER.search(metric) else max)(students, key=students.get)
    head = "".join(f"<th>{escape(metric.replace('_', ' '))}</th>" for metric in metrics)
    body = ""
    for group, row in rows.items():
        cells = ""
        for metric in metrics:
            mark = ' class="best"' if best.get(metric) == group else ""
            cells += f"<td{mark}>{mean_and_spread(row[metric], metric) if metric in row else '–'}</td>"
        count = f" <small>{seeds[group]} runs</small>" if seeds[group] > 1 else ""
        body += f"<tr><th>{escape(group)}{count}</th>{cells}</tr>"
    note = "Last evaluation of each run; mean ± standard deviation over runs of one name." if len(runs) > 1 else ""
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div><p class="note">{note}</p>'


def cards(runs: list[Run]) -> str:
    facts = [("runs", str(len(runs))), ("steps", number(max(run.steps for run in runs)))]
    rates = [v for run in runs for _, v in run.series.get("tokens_per_s", []) if math.isfinite(v)]
    peaks = [v for run in runs for _, v in run.series.get("peak_bytes", []) if math.isfinite(v)]
    bad = sum(math.isnan(v) for run in runs for s in run.series.values() for _, v in s)
    facts += [("tokens/s, median", number(statistics.median(rates)))] if rates else []
    facts += [("peak memory", bytes_text(max(peaks)))] if peaks else []
    facts += [("values not finite", str(bad))] if bad else []
    unread = sum(run.unread for run in runs)
    facts += [("lines not readable", str(unread))] if unread else []
    return "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in facts)


def chart_names(runs: list[Run]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), names.index(name)))


def chart_grid(runs: list[Run]) -> str:
    groups = list(dict.fromkeys(run.group for run in runs))
    figures = ""
    for name in chart_names(runs):
        lines = [
            charts.Line(run.name, groups.index(run.group), run.series[name]) for run in runs if name in run.series
        ]
        figures += charts.figure(name, lines, lambda value, name=name: shown(name, value))
    keys = "".join(f'<li><i class="key s{i % charts.COLOURS}"></i>{escape(g)}</li>' for i, g in enumerate(groups))
    return f'<ul class="legend">{keys}</ul><div class="charts">{figures}</div>'


def recipes(runs: list[Run]) -> str:
    return "".join(
        f"<details><summary>Recipe: {escape(run.name)}</summary><pre>{escape(run.recipe)}</pre></details>"
        for run in runs
        if run.recipe is not None
    )


def page(runs: list[Run], title: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{charts.STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<section class="cards">{cards(runs)}</section>
<h2>Evaluation</h2>
{evaluation_table(runs)}
<h2>Curves</h2>
{chart_grid(runs)}
<h2>Dtypes, devices, memory</h2>
{contract.sections({run.name: run.contract for run in runs if run.contract is not None})}
<h2>Recipes</h2>
{recipes(runs) or "<p>No recipe.ini in the run folders.</p>"}
</main>
</body>
</html>
"""


def refuse_output(output: Path, runs: list[Run]) -> None:
    """What is no regular file is not replaced, nor anything of a run but an older report, whatever it is called."""
    if not output.exists():
        return
    if not output.is_file():
        kind = "a folder" if output.is_dir() else "no regular file"
        raise ReportError(6, f"{output}: is {kind}, wanted the name of a file, new or to be replaced: choose another with --output FILE")
    for run in runs:
        for read in (run.folder / name for name in ("metrics.jsonl", "contract.json", "recipe.ini")):
            if read.exists() and output.samefile(read):
                raise ReportError(USAGE, f"--output {output}: is {read}, which is read: name another place")


def write_whole(path: Path, text: str) -> None:
    """Under its name only when it is complete."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise ReportError(6, f"{path}: cannot be written: {error.strerror}; choose another with --output FILE")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN_DIR")
    parser.add_argument("--output", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--title", help="default: the names of the runs")
    parser.add_argument("--table", action="store_true", help="print the evaluation table as well")
    options = parser.parse_args(arguments)
    try:
        runs = [read_run(argument) for argument in options.runs]
        groups = list(dict.fromkeys(run.group for run in runs))
        title = options.title or ("Limbeck: " + (runs[0].name if len(runs) == 1 else ", ".join(groups)))
        output = options.output or runs[0].folder / "report.html"
        refuse_output(output, runs)
        write_whole(output, page(runs, title))
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return error.code
    if options.table:
        print(plain_table(runs) + "\n")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
