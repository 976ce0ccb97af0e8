#!/usr/bin/env python3
"""report_pareto.py RESULT.json ... [--output FILE]: what each form of a model is worth against its bytes, milliseconds and
joules, as one HTML page that needs nothing else.

RESULT.json: what `limbeck sweep`, `limbeck profile` and `limbeck quantize --budgets` write, any number of each, of one model.
A form that was not measured in one of the three has no mark there, and the page says why.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
import report_marks as marks  # noqa: E402
from guarded_work import answered  # noqa: E402
from report_budgets import Point as BudgetPoint  # noqa: E402
from report_contract import table  # noqa: E402
from report_files import page_of_files  # noqa: E402
from report_numbers import bytes_text, number  # noqa: E402
from report_profile import Profile  # noqa: E402
from report_results import Result, read_any  # noqa: E402
from report_runs import INPUT, ReportError  # noqa: E402
from report_sweep import NONE, Model, Sweep, or_none, quality_text, range_text  # noqa: E402

LOWER_IS_BETTER = ("perplexity", "loss", "kl", "1 - cosine")
COSTS = ("bytes", "ms", "joules")
TITLES = {"bytes": "bytes", "ms": "milliseconds a row", "joules": "joules a row"}
SHAPES = dict(zip(COSTS, ("square", "circle", "diamond")))


@dataclass
class Form:
    """One form of the model. A cost that was not measured is absent, and `why` says why not."""

    name: str
    source: str
    quality: str
    value: float
    low: float | None = None
    high: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    reference: bool = False  # what others of its source are compared with
    rows: str = ""  # on which its quality was measured


def with_costs(form: Form, costs: dict[str, float | None], why: dict[str, str]) -> Form:
    form.costs = {name: value for name, value in costs.items() if value is not None and value > 0}
    absent = {name: "was measured as 0" if costs.get(name) == 0 else "was not measured" for name in COSTS}
    form.why = {name: why.get(name) or absent[name] for name in COSTS if name not in form.costs}
    return form


def of_sweep(sweep: Sweep, label: str) -> list[Form]:
    def form(model: Model, name: str, reference: bool = False) -> Form:
        ms = model.seconds * 1000 / sweep.rows if model.seconds is not None and sweep.rows > 0 else None
        made = Form(name, label, sweep.quality, model.quality, reference=reference, rows=sweep.measured_on)
        return with_costs(made, {"bytes": model.bytes, "ms": ms}, {"joules": "a sweep measures none"})

    # As it is, the model is in float32.
    measured = [model for model in sweep.whole if model.measured and model.quality is not None and model.format != "float32"]
    forms = [form(sweep.baseline, "as it is", reference=True), *(form(model, model.format) for model in measured)]
    combined = sweep.combined
    if combined and combined.model.measured and combined.model.quality is not None:
        forms.append(form(combined.model, f"combined, {len(combined.modules)} modules"))
    return forms


def of_profile(profile: Profile, label: str) -> list[Form]:
    forms = []
    for row in profile.of("forward"):
        if row.value is None:
            continue
        known = row.mean is not None and row.rows_per_second is not None
        batch = max(1, round(row.rows_per_second * row.mean / 1000)) if known else profile.batch or 1
        made = Form(row.name, label, row.quality, row.value, reference=row.precision.lower() in ("float32", "fp32"), rows=row.measured_on)
        costs = {"bytes": row.on_disk if row.on_disk is not None else row.weights, "ms": None if row.mean is None else row.mean / batch,
                 "joules": None if row.joules is None else row.joules / batch}  # fmt: skip
        forms.append(with_costs(made, costs, {"joules": row.no_joules}))
    return forms


def of_curve(points: list[BudgetPoint], label: str, measured_on: str) -> list[Form]:
    why = {"ms": "budgets measure none", "joules": "budgets measure none"}
    first = points[0]
    predicts = first.perplexity is not None
    name = "perplexity" if predicts else "1 - cosine"
    floats = Form("in floats", label, name, first.float_perplexity if predicts else 0.0, reference=True)
    forms = [with_costs(floats, {"bytes": first.bytes * first.ratio}, why)]
    for point in points:
        made = Form(point.asked, label, name, point.perplexity if predicts else point.distance)
        if not predicts:
            made.low, made.high = point.low, point.high
        forms.append(with_costs(made, {"bytes": point.bytes}, why))
    for form in forms:
        form.rows = measured_on
    return forms


def forms_of(result: Result) -> list[Form]:
    makers = {"Sweep": of_sweep, "Profile": of_profile}
    if result.kind.title == "Budgets":
        points, _, measured_on = result.value
        return of_curve(points, result.label, measured_on)
    return makers[result.kind.title](result.value, result.label)


def rows_note(forms: list[Form]) -> str:
    """Whether qualities compare: they do on the same rows alone."""
    by_rows: dict[str, list[str]] = {}
    for form in forms:
        sources = by_rows.setdefault(form.rows, [])
        if form.source not in sources:
            sources.append(form.source)
    if len(by_rows) == 1:
        (rows,) = by_rows
        return f"All are measured on the same rows: {rows}." if rows else "On which rows this was measured is not said."
    said = "; ".join(f"{', '.join(sources)}: {rows or 'not said'}" for rows, sources in by_rows.items())
    return f"Not measured on the same rows, so that differences between files may be those of the rows: {said}."


def cost_text(cost: str, value: float) -> str:
    return {"bytes": bytes_text, "ms": lambda v: f"{number(v)} ms", "joules": lambda v: f"{number(v)} J"}[cost](value)


def with_numbers(forms: list[Form]) -> dict[int, str]:
    """What marks are called in the charts: their line of the table."""
    return {id(form): str(number_of + 1) for number_of, form in enumerate(forms)}


def line_of(form: Form, cost: str) -> str:
    """Which front of this cost it may be on. Bytes are counted alike by all; times and joules are those of the work that was measured."""
    return "" if cost == "bytes" else form.source


def on_front(forms: list[Form], cost: str, values: list[float | None]) -> list[bool]:
    """Which forms nothing that compares beats both in quality and in these values of a cost; one without a value is on no front."""
    more = forms[0].quality not in LOWER_IS_BETTER
    best = [False] * len(forms)
    for line in {line_of(form, cost) for form in forms}:
        members = [at for at, form in enumerate(forms) if line_of(form, cost) == line and values[at] is not None]
        for at, ahead in zip(members, marks.best_of([(values[at], forms[at].value) for at in members], more)):
            best[at] = ahead
    return best


def fronts_of(forms: list[Form], cost: str) -> list[bool]:
    return on_front(forms, cost, [form.costs.get(cost) for form in forms])


def share_of(forms: list[Form], form: Form, cost: str) -> float | None:
    """Of the cost of the same source's model in floats."""
    base = reference_of(forms, form)
    return form.costs[cost] / base.costs[cost] if base is not None and cost in form.costs and cost in base.costs else None


def one_chart(forms: list[Form]) -> str:
    """All three costs over those of the same source's model in floats: what stands left of 1 is cheaper than that."""
    drawn, names = [], with_numbers(forms)
    for colour, cost in enumerate(COSTS):
        shares = [share_of(forms, form, cost) for form in forms]
        for form, share, best in zip(forms, shares, on_front(forms, cost, shares)):
            if share is not None:
                drawn.append(marks.Mark(share, form.value, f"{form.name} ({form.source}), {TITLES[cost]}", colour, best, SHAPES[cost], names[id(form)],
                                        line_of(form, cost)))  # fmt: skip
    quality = forms[0].quality
    return marks.scatter(f"{quality} against all costs, as shares of the model in floats", drawn, lambda v: f"{number(v)}x",
                         lambda v: quality_text(quality, v), "the share of the cost")  # fmt: skip


def reference_of(forms: list[Form], form: Form) -> Form | None:
    """Of a profile on more than one device the one on the same device."""
    mine = [one for one in forms if one.reference and one.source == form.source]
    device = form.name.partition(" on ")[2]
    return next((one for one in mine if one.name.partition(" on ")[2] == device), mine[0] if mine else None)


def cost_charts(forms: list[Form], sources: list[str]) -> str:
    out, names, quality = "", with_numbers(forms), forms[0].quality
    for cost in COSTS:
        front = fronts_of(forms, cost)
        drawn = [marks.Mark(form.costs[cost], form.value, f"{form.name} ({form.source})", sources.index(form.source), best, SHAPES[cost], names[id(form)])
                 for form, best in zip(forms, front) if cost in form.costs]  # fmt: skip
        out += marks.scatter(f"{quality} against {TITLES[cost]}", drawn, lambda v, cost=cost: cost_text(cost, v), lambda v: quality_text(quality, v),
                             TITLES[cost])  # fmt: skip
    return out


def missing_notes(forms: list[Form]) -> list[str]:
    """Every reason once, with the forms that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for form in forms:
        for cost, why in form.why.items():
            reasons.setdefault((cost, why), []).append(f"{form.name} ({form.source})")
    said = []
    for (cost, why), names in reasons.items():
        who = "no form of the model" if len(names) == len(forms) else "not of " + (", ".join(names) if len(names) <= 4 else f"{len(names)} of {len(forms)} forms")
        said.append(f"{TITLES[cost].capitalize()}: {'of ' + who if who.startswith('no ') else who}: {why}.")
    return said


def forms_table(forms: list[Form], label: str) -> str:
    quality = forms[0].quality
    head = ["", "form", "from", quality, "95 %", *(TITLES[cost] for cost in COSTS), "on the front of"]
    fronts = {cost: fronts_of(forms, cost) for cost in COSTS}
    rows = []
    for at, form in enumerate(forms):
        best = ", ".join(TITLES[cost] for cost in COSTS if fronts[cost][at]) or NONE
        rows.append([str(at + 1), form.name, form.source, quality_text(quality, form.value), range_text(form.low, form.high),
                     *(or_none(lambda v, cost=cost: cost_text(cost, v), form.costs.get(cost)) for cost in COSTS), best])  # fmt: skip
    return table(label, head, rows)


def body(forms: list[Form]) -> str:
    """A section for each way of measuring quality: values of two do not compare."""
    sources = list(dict.fromkeys(form.source for form in forms))
    out = ""
    for quality in dict.fromkeys(form.quality for form in forms):
        of_it = [form for form in forms if form.quality == quality]
        better = "lower is better" if quality in LOWER_IS_BETTER else "higher is better"
        said = [f"A ring marks what no other form beats both in {quality} ({better}) and in that cost; lines join them. Numbers are lines of the table. "
                "Bytes compare between files. Milliseconds and joules do not: a sweep's are those of its evaluation, a profile's those of its "
                "batches of one length, so that each file has a front of its own.",
                rows_note(of_it)]  # fmt: skip
        out += f"<h2>{charts.escape(quality.capitalize())}</h2>"
        out += marks.legend([(i, TITLES[cost]) for i, cost in enumerate(COSTS)])
        out += f'<div class="charts wide">{one_chart(of_it)}</div>{marks.notes(said)}'
        out += marks.legend(list(enumerate(sources))) + f'<div class="charts">{cost_charts(of_it, sources)}</div>'
        out += marks.notes(missing_notes(of_it)) + forms_table(of_it, f"Forms by {quality}")
    return out


def all_forms(results: list[Result]) -> list[Form]:
    return [form for result in results for form in forms_of(result)]


def report(options: argparse.Namespace) -> None:
    results = [read_any(path) for path in options.results]
    forms = all_forms(results)
    if not forms:
        raise ReportError(INPUT, f"{options.results[0]}: no form of a model with a measured quality: profile on a data set (data.validation), or name a sweep")
    title = options.title or "Limbeck: quality against cost"
    page_of_files(options, options.results, lambda: charts.document(title, body(forms)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--output", type=Path, help="default: the first one's name, as .html")
    parser.add_argument("--title", help="default: quality against cost")
    options = parser.parse_args(arguments)
    return answered("report_pareto", lambda: report(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
