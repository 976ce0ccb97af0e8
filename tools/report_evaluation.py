"""The evaluation tables of the report: a row a group of runs, and a table a validation set."""

from __future__ import annotations

import re
import statistics
from html import escape

from report_numbers import mean_and_spread
from report_runs import Run, ValidationSet, validation_sets

LOWER_IS_BETTER = re.compile(r"perplexity|kl|ce$")
# What means the same in every run. A loss is the sum of a run's own terms and marks no winner.
COMPARABLE = re.compile(r"^(?:perplexity|kl|ce|accuracy|cosine|top\d+_\w+)$")

Rows = dict[str, dict[str, list[float]]]  # by group and metric, the last value of each run


def is_teacher(group: str) -> bool:
    return group.lower() == "teacher"


def evaluation_rows(runs: list[Run], on: ValidationSet) -> Rows:
    """A teacher measured beside its student is a row of its own."""
    rows: Rows = {}
    teacher: dict[str, list[float]] = {}
    for run in runs:
        for name in run.series:
            if not name.startswith("eval.") or (value := run.last_on(name, on)) is None:
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


def metrics_of(rows: Rows) -> list[str]:
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    return sorted(metrics, key=lambda metric: (not COMPARABLE.match(metric), metric != "perplexity"))


def plain(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


def plain_table(runs: list[Run]) -> str:
    """What means the same in every run, for a terminal."""
    sets = validation_sets(runs)
    lines = []
    for on, name in sets.items():
        rows = evaluation_rows(runs, on)
        metrics = [metric for metric in metrics_of(rows) if COMPARABLE.match(metric)]
        lines += [f"{'' if not lines else chr(10)}on {name}:"] if len(sets) > 1 else []
        lines.append(f"{'':<24}" + "".join(f"{metric.replace('_', ' '):>20}" for metric in metrics))
        for group, row in rows.items():
            cells = "".join(f"{plain(mean_and_spread(row[m], m)) if m in row else '–':>20}" for m in metrics)
            lines.append(f"{group:<24}{cells}")
    return "\n".join(lines)


def winners(rows: Rows, metrics: list[str]) -> dict[str, str]:
    best = {}
    for metric in metrics:
        students = {g: statistics.fmean(r[metric]) for g, r in rows.items() if metric in r and not is_teacher(g)}
        if len(students) > 1 and COMPARABLE.match(metric):
            best[metric] = (min if LOWER_IS_BETTER.search(metric) else max)(students, key=students.get)
    return best


def evaluation_table(rows: Rows, label: str) -> str:
    metrics = metrics_of(rows)
    best = winners(rows, metrics)
    head = "".join(f'<th scope="col">{escape(metric.replace("_", " "))}</th>' for metric in metrics)
    body = ""
    for group, row in rows.items():
        cells = ""
        for metric in metrics:
            mark = ' class="best"' if best.get(metric) == group else ""
            value = mean_and_spread(row[metric], metric) if metric in row else "–"
            cells += f'<td data-label="{escape(metric.replace("_", " "), quote=True)}"><span{mark}>{value}</span></td>'
        seeds = max(len(values) for values in row.values())
        count = f" <small>{seeds} runs</small>" if seeds > 1 else ""
        body += f'<tr><th scope="row">{escape(group)}{count}</th>{cells}</tr>'
    return f'<table aria-label="{escape(label, quote=True)}"><tr><td></td>{head}</tr>{body}</table>'


def evaluation_sections(runs: list[Run]) -> str:
    sets = validation_sets(runs)
    if not sets:
        return "<p>No evaluation was made.</p>"
    out = ""
    for on, name in sets.items():
        out += f"<h3>On {escape(name)}</h3>" if len(sets) > 1 else ""
        out += evaluation_table(evaluation_rows(runs, on), f"Evaluation on {name}")
    notes = ["Last evaluation of each run; mean ± standard deviation over runs of one name."] if len(runs) > 1 else []
    notes += ["Values on different validation sets are not comparable."] if len(sets) > 1 else []
    return f'{out}<p class="note">{" ".join(notes)}</p>'
