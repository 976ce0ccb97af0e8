#!/usr/bin/env python3
"""report_sweep.py SWEEP.json [--output FILE]: what each module costs in fewer bits, as one HTML page that needs nothing else.

SWEEP.json is what `limbeck sweep` leaves in its run's folder, or writes by --json: whole models, the combined one, and
every candidate. What failed or overflowed is drawn apart, for it has no drop.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
import report_marks as marks  # noqa: E402
from report_contract import table  # noqa: E402
from report_files import main_of_a_page, named  # noqa: E402
from report_numbers import bytes_text, number  # noqa: E402
from report_values import checked, entries_of, maybe, object_of, result_of, rows_of, size_of, text_of, value_of  # noqa: E402

WANTED = "wanted the sweep.json that `limbeck sweep` writes"
MEASURED = "measured"
UNITS = {"accuracy": "pp", "perplexity": "%", "cosine": "pp"}  # of a drop
NONE = "–"


@dataclass
class Model:
    """A whole model, or one with a single module converted. None: not measured."""

    name: str
    format: str
    status: str
    reason: str
    quality: float | None
    drop: float | None
    low: float | None
    high: float | None
    p: float | None
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    seconds: float | None
    bytes: float | None

    @property
    def measured(self) -> bool:
        return self.status == MEASURED and self.drop is not None


@dataclass
class Candidate(Model):
    role: str
    logit_error: float | None
    seconds_before: float | None
    bytes_before: float | None
    score: float | None
    pareto: bool
    selected: bool


@dataclass
class Combined:
    model: Model
    modules: list[tuple[str, str]]
    rules: list[str]
    test: str
    safe: bool | None
    predicted: tuple[float, float | None, float | None] | None
    on_choosing: tuple[float, float | None, float | None] | None  # the same model on the rows that chose it


@dataclass
class Sweep:
    kind: str
    quality: str
    rows: float
    targets: float
    measured_on: str  # which rows; "": not said
    choosing: float | None  # rows that choose and measure nothing; None: the same ones
    baseline: Model
    whole: list[Model]
    candidates: list[Candidate]
    combined: Combined | None
    seconds: float | None
    share: float | None
    share_of_all: float | None

    @property
    def unit(self) -> str:
        return UNITS.get(self.quality, "%")

    @property
    def formats(self) -> list[str]:
        return list(dict.fromkeys(one.format for one in self.candidates))


def is_sweep(result: dict) -> bool:
    return "candidates" in result and "baseline" in result


def fields_of(entry: dict, name: str) -> dict:
    measured = {key: maybe(entry, key) for key in ("quality", "drop", "low", "high", "p", "kl", "kl_low", "kl_high")}
    sizes = {key: size_of(entry, key) for key in ("seconds", "bytes")}
    return {"name": name, "format": text_of(entry, "format"), "status": text_of(entry, "status") or MEASURED,
            "reason": text_of(entry, "reason"), **measured, **sizes}  # fmt: skip


def candidate_of(entry: dict) -> Candidate:
    return Candidate(**fields_of(entry, text_of(entry, "module")), role=text_of(entry, "role"), logit_error=maybe(entry, "logit_error"),
                     seconds_before=size_of(entry, "seconds_before"), bytes_before=size_of(entry, "bytes_before"),
                     score=maybe(entry, "score"), pareto=entry.get("pareto") is True, selected=entry.get("selected") is True)  # fmt: skip


def combined_of(result: dict) -> Combined | None:
    entry = object_of(result, "combined")
    if not entry:
        return None
    modules = [(text_of(one, "module"), text_of(one, "format")) for one in entries_of(entry, "modules")]
    rules = entry.get("rules") or []
    if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
        raise ValueError("rules are no list of texts")
    predicted, chosen = maybe(entry, "predicted_drop"), object_of(entry, "on_choosing_rows")
    drop = maybe(chosen, "drop")
    return Combined(Model(**fields_of(entry, "combined")), modules, rules, text_of(entry, "test"), entry.get("safe"),
                    None if predicted is None else (predicted, maybe(entry, "predicted_low"), maybe(entry, "predicted_high")),
                    None if drop is None else (drop, maybe(chosen, "low"), maybe(chosen, "high")))  # fmt: skip


def sweep_of(result: dict) -> Sweep:
    baseline, times, choosing = (object_of(result, key) for key in ("baseline", "seconds", "choosing"))
    if maybe(baseline, "quality") is None:
        raise ValueError("the baseline has no quality")
    return Sweep(text_of(result, "kind"), text_of(result, "quality"), value_of(result, "rows"), value_of(result, "targets"),
                 rows_of(result), size_of(choosing, "rows") if choosing.get("others") is True else None,
                 Model(**fields_of(baseline, "float32")), [Model(**fields_of(one, text_of(one, "format"))) for one in entries_of(result, "whole_models")],
                 [candidate_of(one) for one in entries_of(result, "candidates")], combined_of(result), size_of(times, "sweep"),
                 size_of(times, "share_of_full_evaluations"), size_of(times, "share_of_full_evaluations_of_all_rows"))  # fmt: skip


def read_sweep(path: Path) -> Sweep:
    return checked(path, result_of(path, WANTED), sweep_of, WANTED)


def quality_text(quality: str, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" if quality == "accuracy" else number(value)


def points_text(value: float) -> str:
    """A drop of accuracy has few digits; of a perplexity one may be far smaller, and no 0 for that."""
    return f"{value + 0.0:.2f}" if value == 0 or 0.0995 <= abs(value) < 1e4 else number(value)


def drop_text(value: float, unit: str) -> str:
    return f"{points_text(value)} {unit}"


def or_none(text, value: float | None) -> str:
    return NONE if value is None else text(value)


def seconds_text(value: float) -> str:
    return f"{number(value)} s" if value >= 1 else f"{number(1000 * value)} ms"


def range_text(low: float | None, high: float | None, text=number) -> str:
    return NONE if low is None or high is None else f"{text(low)} to {text(high)}"


def result_cells(sweep: Sweep, model: Model) -> list[str]:
    if not model.measured:
        return [NONE] * 3
    return [quality_text(sweep.quality, model.quality), drop_text(model.drop, sweep.unit) + in_brackets(model.low, model.high, points_text),
            or_none(number, model.kl) + in_brackets(model.kl_low, model.kl_high)]  # fmt: skip


def in_brackets(low: float | None, high: float | None, text=number) -> str:
    return "" if low is None or high is None else f" [{text(low)}, {text(high)}]"


def now_and_before(now: float | None, before: float | None, text) -> str:
    return or_none(text, now) if before is None else f"{or_none(text, now)} of {text(before)}"


def state_of(model: Model) -> str:
    return MEASURED if model.measured else f"{model.status}: {model.reason or 'no reason is given'}"


def whole_table(sweep: Sweep) -> str:
    head = ["model", sweep.quality, "drop [95 %]", "KL [95 %]", "time", "bytes", "state"]
    base = sweep.baseline
    rows = [["as it is", quality_text(sweep.quality, base.quality), NONE, NONE, or_none(seconds_text, base.seconds),
             or_none(bytes_text, base.bytes), "compared with"]]  # fmt: skip
    models = [*sweep.whole, *([sweep.combined.model] if sweep.combined else [])]
    rows += [[model.name, *result_cells(sweep, model), or_none(seconds_text, model.seconds), or_none(bytes_text, model.bytes),
              state_of(model)] for model in models]  # fmt: skip
    return table("Whole models", head, rows)


def candidates_table(sweep: Sweep) -> str:
    head = ["module", "format", "role", sweep.quality, "drop [95 %]", "KL [95 %]", "p", "logit error", "time", "bytes", "score", "state"]
    rows = []
    for one in sorted(sweep.candidates, key=lambda one: not one.measured):
        state = ", ".join([state_of(one), *(["selected"] if one.selected else []), *(["Pareto"] if one.pareto else [])])
        score, p, error = (one.score, one.p, one.logit_error) if one.measured else (None, None, None)
        rows.append([one.name, one.format, one.role, *result_cells(sweep, one), or_none(number, p), or_none(number, error),
                     now_and_before(one.seconds, one.seconds_before, seconds_text), now_and_before(one.bytes, one.bytes_before, bytes_text),
                     or_none(number, score), state])  # fmt: skip
    return table("Candidates", head, rows)


def combined_figure(sweep: Sweep) -> str:
    combined = sweep.combined
    rows, missing = [], []
    if combined.predicted is not None:
        rows.append(marks.Interval("the sum of their own drops", 1, *combined.predicted))
    if combined.on_choosing is not None and sweep.choosing is not None:
        rows.append(marks.Interval("measured together on the rows that chose", 1, *combined.on_choosing))
    if combined.model.measured:
        rows.append(marks.Interval("measured together", 0, combined.model.drop, combined.model.low, combined.model.high))
    else:
        missing.append(marks.Missing("measured together", combined.model.status))
    return marks.intervals("drop, predicted and measured", rows, missing, lambda value: drop_text(value, sweep.unit))


def combined_section(sweep: Sweep) -> str:
    combined = sweep.combined
    if combined is None:
        return "<p>No candidate was selected: there is no combined model.</p>"
    said = [f"{len(combined.modules)} modules converted together: {sweep.quality} {quality_text(sweep.quality, combined.model.quality)}."]
    if not combined.model.measured:
        said.append(state_of(combined.model) + ".")
    if combined.model.p is not None:
        said.append(f"{combined.test or 'Paired test'}: p = {number(combined.model.p)} on {number(sweep.rows)} rows.")
    if combined.safe is not None:
        said.append("Its interval lies within what may be lost." if combined.safe is True else
                    "Its interval does not exclude a greater loss than may be: it is not called safe.")  # fmt: skip
    rules = charts.escape("\n".join(combined.rules)) or "none"
    listed = table("Modules of the combined model", ["module", "format"], [[*pair] for pair in combined.modules])
    return (f'<div class="charts">{combined_figure(sweep)}</div>{marks.notes([" ".join(said)])}<h3>Rules</h3><pre>{rules}</pre>'
            f"<details><summary>Modules of it</summary>{listed}</details>")  # fmt: skip


def drop_figures(sweep: Sweep) -> str:
    out = ""
    for colour, format_name in enumerate(sweep.formats):
        of_it = [one for one in sweep.candidates if one.format == format_name]
        measured = sorted((one for one in of_it if one.measured), key=lambda one: one.drop)
        failed = [marks.Missing(one.name, one.status) for one in of_it if not one.measured]
        shown = measured[-marks.MOST_ROWS :]  # those that lose most
        rows = [marks.Interval(one.name, colour, one.drop, one.low, one.high) for one in shown]
        title = f"drop by module, {format_name}" + (f" (the worst {len(shown)} of {len(measured)})" if len(shown) < len(measured) else "")
        out += marks.intervals(title, rows, failed[: marks.MOST_ROWS], lambda value: drop_text(value, sweep.unit))
    return out


def saved(one: Candidate, what: str) -> float | None:
    now, before = getattr(one, what), getattr(one, f"{what}_before")
    return None if now is None or before is None else before - now


def saving_figures(sweep: Sweep) -> str:
    out = ""
    for what, title, text in (("bytes", "drop against bytes saved", bytes_text), ("seconds", "drop against time saved", seconds_of_saving)):
        points = [marks.Mark(gain, one.drop, f"{one.name} {one.format}", sweep.formats.index(one.format), shape="circle" if not one.selected else "square")
                  for one in sweep.candidates if one.measured and (gain := saved(one, what)) is not None]  # fmt: skip
        out += marks.scatter(title, points, text, lambda value: drop_text(value, sweep.unit), title.split(" against ")[1])
    return out


def seconds_of_saving(value: float) -> str:
    return f"{number(1000 * value)} ms"


def rows_said(sweep: Sweep) -> str:
    if sweep.choosing is None:
        return "Candidates and whole models are measured on the same rows: what was chosen by them looks better on them than elsewhere."
    return (f"Candidates are measured on {number(sweep.choosing)} rows, which choose; whole models on {number(sweep.rows)} others, "
            "which chose nothing.")  # fmt: skip


def body(sweep: Sweep) -> str:
    failed = [one for one in sweep.candidates if not one.measured]
    facts = [("candidates", number(len(sweep.candidates))), ("failed or overflowed", number(len(failed))),
             (f"{sweep.quality} as it is", quality_text(sweep.quality, sweep.baseline.quality)), ("rows held out", number(sweep.rows)),
             ("targets", number(sweep.targets))]  # fmt: skip
    facts += [("other rows that choose", number(sweep.choosing))] if sweep.choosing is not None else []
    if sweep.combined and sweep.combined.model.measured:
        facts.append(("drop of the combined model", drop_text(sweep.combined.model.drop, sweep.unit)))
    facts += [("time of the sweep", seconds_text(sweep.seconds))] if sweep.seconds is not None else []
    same = "of as many full evaluations" + (" of the same rows" if sweep.choosing is not None else "")
    facts += [(same, f"{100 * sweep.share:.0f} %")] if sweep.share is not None else []
    if sweep.share_of_all is not None and sweep.choosing is not None:
        facts.append(("of as many on all rows", f"{100 * sweep.share_of_all:.0f} %"))
    legend = marks.legend(list(enumerate(sweep.formats)))
    lost = [marks.Missing(f"{one.name}, {one.format}", state_of(one)) for one in failed]
    why = table("Failed", ["module, format", "why"], [[one.name, one.why] for one in lost]) if lost else "<p>None.</p>"
    return f"""{marks.cards(facts)}
<h2>Whole models</h2>
{whole_table(sweep)}
<h2>Combined model</h2>
{marks.notes([rows_said(sweep)])}
{combined_section(sweep)}
<h2>Module by module</h2>
{marks.notes(["The drop of the model when one module alone is converted, with its 95 % interval; to the right is worse. A cross is "
              "a candidate without a value. Squares are selected."])}
{legend}<div class="charts">{saving_figures(sweep)}{drop_figures(sweep)}</div>
<h2>Failed and overflowed</h2>
{why}
<h2>All candidates</h2>
{candidates_table(sweep)}"""


def main(arguments: list[str]) -> int:
    return main_of_a_page("report_sweep", __doc__, "SWEEP", "name the sweep.json of a run", named, read_sweep, body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
