#!/usr/bin/env python3
"""report.py [LABEL=]RUN_DIR ... [--output FILE] [--title TEXT]: what runs did, as one HTML page that needs nothing else.

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
            if name in BOOKKEEPING or (name == "targets" and entry.get("phase") == "eval") or isinstance(value, (str, bool, list, dict)):
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
            contract = json.loads((path / "contract.json").read_text(encoding="utf-8"))
            run.contract = contract.get("result", contract)  # `check --json` wraps it
        except (ValueError, AttributeError) as error:
            raise ReportError(INPUT, f"{path / 'contract.json'}: {error}; wanted what `limbeck check --json` writes")
    if (path / "recipe.ini").is_file():
        run.recipe = (path / "recipe.ini").read_text(encoding="utf-8", errors="replace")
    return run


# Numbers


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == int(value) and size < 1e6:
        return str(int(value))
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if size >= 1e4 else f"{value:.4g}"


def bytes_text(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            break
        value /= 1000
    else:
        unit = "TB"
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def shown(name: str, value: float | None) -> str:
    return bytes_text(value) if value is not None and name.endswith("bytes") else number(value)


def mean_and_spread(values: list[float], name: str) -> str:
    text = shown(name, statistics.fmean(values))
    if len(values) > 1:
        spread = statistics.stdev(values)
        text += f" <small>± {bytes_text(spread) if name.endswith('bytes') else f'{spread:.2g}'}</small>"
    return text


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


# The contract


def cells(values: list[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)


def modules_table(modules: list[dict]) -> str:
    head = ["module", "role", "storage", "in", "compute", "out", "device", "parameters", "bytes", "from"]
    body = ""
    for module in modules:
        row = [str(module.get(key, "")) for key in head]
        row[0] += f" ×{module['modules']}" if module.get("modules", 1) > 1 else ""
        row[7], row[8] = f"{module.get('parameters', 0):,}", bytes_text(module.get("bytes", 0))
        body += f"<tr>{cells(row)}</tr>"
    return f'<div class="wide"><table class="left"><tr>{cells(head, "th")}</tr>{body}</table></div>'


def casts_table(casts: list[dict]) -> str:
    if not casts:
        return "<p>None: no tensor changes its dtype.</p>"
    sums: dict[tuple, list[int]] = {}
    for cast in casts:
        place = re.sub(r"\.\d+\.", ".*.", str(cast.get("place", "")))  # one line for all layers
        total = sums.setdefault((place, cast.get("from"), cast.get("to"), cast.get("phase")), [0, 0])
        total[0] += cast.get("count", 1)
        total[1] += cast.get("bytes", 0)
    head = ["place", "from", "to", "phase", "count", "bytes"]
    body = "".join(
        f"<tr>{cells([str(part) for part in key] + [f'{count:,}', bytes_text(size)])}</tr>"
        for key, (count, size) in sums.items()
    )
    return f'<div class="wide"><table class="left"><tr>{cells(head, "th")}</tr>{body}</table></div>'


def memory_bars(memory: dict[str, float]) -> str:
    largest = max(memory.values(), default=0) or 1
    rows = "".join(
        f'<div class="bar"><span>{escape(what)}</span><div><i style="width:{100 * size / largest:.1f}%"></i></div>'
        f"<b>{bytes_text(size)}</b></div>"
        for what, size in memory.items()
    )
    return f'<div class="bars">{rows}</div>'


def contract_sections(runs: list[Run]) -> str:
    """One section a different contract, headed by the runs that have it."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        if run.contract is not None:
            key = {name: run.contract.get(name) for name in ("modules", "casts", "memory")}
            kinds.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    out = ""
    for index, owners in enumerate(kinds.values()):
        contract = owners[0].contract or {}
        who = f": {escape(', '.join(run.name for run in owners))}" if len(kinds) > 1 else ""
        is_open = " open" if index == 0 else ""
        out += f"<details{is_open}><summary>Contract{who}</summary><h3>Modules</h3>"
        out += modules_table(contract.get("modules", []))
        out += f"<h3>Casts of one step</h3>{casts_table(contract.get('casts', []))}"
        out += f"<h3>Memory plan</h3>{memory_bars(contract.get('memory', {}))}</details>"
    return out or "<p>No contract.json in the run folders.</p>"


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
{contract_sections(runs)}
<h2>Recipes</h2>
{recipes(runs) or "<p>No recipe.ini in the run folders.</p>"}
</main>
</body>
</html>
"""


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
