#!/usr/bin/env python3
"""report.py [LABEL=]RUN_DIR|RESULT.json ... [--output FILE]: what runs did, as one HTML page that needs nothing else.

Curves of everything metrics.jsonl holds, the evaluation table over seeds, the dtype contract, the memory plan and the
resolved recipe. Runs whose names differ in a number at the end only (distilled-seed0, distilled-seed1) are one row,
where they were evaluated on the same validation set: each set has a table and curves of its own. What `limbeck sweep`,
`limbeck profile` and `limbeck quantize --budgets` wrote is drawn as report_sweep.py, report_profile.py, report_budgets.py and
report_pareto.py draw it; a folder's sweep.json and profile.json are read with it.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
import report_contract as contract  # noqa: E402
import report_pareto as pareto  # noqa: E402
import report_results as results  # noqa: E402
from guarded_work import GIB, answered, step  # noqa: E402
from report_evaluation import evaluation_sections, plain_table  # noqa: E402
from report_files import IO, write_whole  # noqa: E402
from report_numbers import bytes_text, number, shown  # noqa: E402
from report_runs import USAGE, ReportError, Run, read_run, validation_sets  # noqa: E402

FIRST = ["loss", "eval.perplexity", "eval.loss"]  # charts shown before all others
SPEED = re.compile(r"tokens_per_s|bytes|seconds|rank|straggler|communication")


def cards(runs: list[Run]) -> str:
    facts = [("runs", str(len(runs))), ("steps", number(max(run.steps for run in runs)))]
    rates = [v for run in runs for _, v in run.points("tokens_per_s") if math.isfinite(v)]
    peaks = [v for run in runs for _, v in run.points("peak_bytes") if math.isfinite(v)]
    bad = sum(math.isnan(v) for run in runs for s in run.series.values() for v in s.values())
    facts += [("tokens/s, median", number(statistics.median(rates)))] if rates else []
    facts += [("peak memory", bytes_text(max(peaks)))] if peaks else []
    facts += [("values not finite", str(bad))] if bad else []
    unread = sum(run.unread for run in runs)
    facts += [("lines not readable", str(unread))] if unread else []
    return "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in facts)


def chart_names(runs: list[Run]) -> list[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), names.index(name)))


def figures(runs: list[Run], name: str) -> str:
    """One chart; of an evaluation one a validation set, for its values compare with no other's."""
    groups = list(dict.fromkeys(run.group for run in runs))
    sets = validation_sets(runs) if name.startswith("eval.") else {None: ""}
    out = ""
    for on, where in sets.items():
        points = {run.name: run.points(name) if on is None else run.points_on(name, on) for run in runs}
        lines = [charts.Line(run.name, groups.index(run.group), points[run.name]) for run in runs if points[run.name]]
        title = f"{name} on {where}" if len(sets) > 1 else name
        out += charts.figure(title, lines, lambda value: shown(name, value))
    return out


def section_of(name: str) -> str:
    if name.startswith("checkpoint."):
        return "Checkpoints"
    return "Speed and memory" if SPEED.search(name) else "Curves"


def chart_sections(runs: list[Run]) -> str:
    groups = list(dict.fromkeys(run.group for run in runs))
    keys = "".join(f'<li><i class="key s{i % charts.COLOURS}"></i>{escape(g)}</li>' for i, g in enumerate(groups))
    out = ""
    for title in ("Curves", "Speed and memory", "Checkpoints"):
        grid = "".join(figures(runs, name) for name in chart_names(runs) if section_of(name) == title)
        if grid:
            out += f'<h2>{title}</h2><ul class="legend">{keys}</ul><div class="charts">{grid}</div>'
    return out


def recipes(runs: list[Run]) -> str:
    return "".join(
        f"<details><summary>Recipe: {escape(run.name)}</summary><pre>{escape(run.recipe)}</pre></details>"
        for run in runs
        if run.recipe is not None
    )


def runs_body(runs: list[Run]) -> str:
    return f"""<section class="cards">{cards(runs)}</section>
<h2>Evaluation</h2>
{evaluation_sections(runs)}
{chart_sections(runs)}
<h2>Dtypes, devices, memory</h2>
{contract.sections({run.name: run.contract for run in runs if run.contract is not None})}
<h2>Recipes</h2>
{recipes(runs) or "<p>No recipe.ini in the run folders.</p>"}"""


def results_body(found: list[results.Result]) -> str:
    """First what they say together, of each way of measuring quality, then each by itself."""
    forms = pareto.all_forms(found)
    together = pareto.body(forms).replace("<h2>", "<h3>").replace("</h2>", "</h3>") if forms else ""
    return (f"<h2>Quality against cost</h2>{together}" if together else "") + "".join(map(results.section, found))


def page(runs: list[Run], found: list[results.Result], title: str) -> str:
    return charts.document(title, (runs_body(runs) if runs else "") + results_body(found))


def read_all(arguments: list[str]) -> tuple[list[Run], list[results.Result]]:
    """Runs, and what other commands wrote; a folder may hold both."""
    runs, files = [], []
    for argument in arguments:
        path = Path(argument)
        if path.is_file():
            files.append(path)
            continue
        folder = path if path.is_dir() else Path(argument.partition("=")[2] or argument)
        here = results.files_in(folder)
        files += here
        if not here or (folder / "metrics.jsonl").exists():
            runs.append(read_run(argument))
    return runs, [results.read_any(path) for path in files]


def refuse_output(output: Path, runs: list[Run], found: list[results.Result]) -> None:
    """What is no regular file is not replaced, nor anything of a run but an older report, whatever it is called."""
    if not output.exists():
        return
    if not output.is_file():
        kind = "a folder" if output.is_dir() else "no regular file"
        raise ReportError(IO, f"{output}: is {kind}, wanted the name of a file, new or to be replaced: choose another with --output FILE")
    names = ("metrics.jsonl", "contract.json", "recipe.ini")
    for read in [*(run.folder / name for run in runs for name in names), *(result.path for result in found)]:
        if read.exists() and output.samefile(read):
            raise ReportError(USAGE, f"--output {output}: is {read}, which is read: name another place")


def report(options: argparse.Namespace) -> None:
    runs, found = read_all(options.runs)
    step("making a page of it", ", ".join(options.runs), 60, 2 * GIB, "leave runs out, or look at their metrics.jsonl")
    groups = list(dict.fromkeys([*(run.group for run in runs), *(result.label for result in found)]))
    title = options.title or ("Limbeck: " + (runs[0].name if len(runs) == 1 and not found else ", ".join(groups)))
    output = options.output or (runs[0].folder / "report.html" if runs else found[0].path.with_suffix(".html"))
    refuse_output(output, runs, found)
    write_whole(output, page(runs, found, title))
    if options.table and runs:
        print(plain_table(runs) + "\n")
    print(output)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN_DIR|RESULT.json")
    parser.add_argument("--output", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--title", help="default: the names of the runs")
    parser.add_argument("--table", action="store_true", help="print the evaluation table as well")
    options = parser.parse_args(arguments)
    return answered("report", lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
