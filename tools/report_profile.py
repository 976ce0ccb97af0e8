#!/usr/bin/env python3
"""report_profile.py PROFILE.json [--output FILE]: times, bytes and joules of a model in each precision, as one HTML page that
needs nothing else.

PROFILE.json is what `limbeck profile` leaves in its run's folder, or writes by --json. What no meter measured is said to be
so, with the reason; it is drawn nowhere.
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
from report_sweep import NONE, or_none, quality_text  # noqa: E402
from report_values import checked, entries_of, maybe, object_of, result_of, rows_of, size_of, text_of  # noqa: E402

WANTED = "wanted the profile.json that `limbeck profile` writes"
WORKS = ("forward", "training", "generation")
NO_REASON = "no reason is given"
MOST_MODULES = 16  # of a chart


@dataclass
class Module:
    name: str
    role: str
    calls: float | None
    ms: float
    share: float | None
    gflops: float | None
    roofline: float | None
    bound: str
    joules: float | None  # above the idle machine's: noise can bring it below 0
    reason: str


@dataclass
class Row:
    precision: str
    device: str
    work: str
    refused: str  # "" where it was measured
    mean: float | None
    p50: float | None
    p95: float | None
    std: float | None
    rows_per_second: float | None
    tokens_per_second: float | None
    passes: float | None
    asked: float | None  # more than `passes` where time was up
    on_disk: float | None
    weights: float | None
    peak: float | None
    resident: float | None
    quality: str
    value: float | None
    f1: float | None
    measured_on: str  # which rows its quality is of; "": not said
    read: str  # whose rows a pass has
    joules: float | None
    no_joules: str
    idle: float | None
    by_device: dict[str, float | None]
    modules: list[Module]

    @property
    def name(self) -> str:
        return f"{self.precision} on {self.device}"


@dataclass
class Profile:
    machine: list[tuple[str, str]]
    shape: list[tuple[str, str]]
    meters: list[tuple[str, str, str]]
    batch: float | None
    rows: list[Row]

    def of(self, work: str) -> list[Row]:
        return [row for row in self.rows if row.work == work and not row.refused]

    @property
    def precisions(self) -> list[str]:
        return list(dict.fromkeys(row.precision for row in self.rows))


def is_profile(result: dict) -> bool:
    return "machine" in result and "rows" in result


def module_of(entry: dict) -> Module:
    ms = size_of(entry, "ms")
    return Module(text_of(entry, "module"), text_of(entry, "role"), size_of(entry, "calls"), ms or 0.0, size_of(entry, "share"),
                  size_of(entry, "gflops"), size_of(entry, "roofline_share"), text_of(entry, "bound"), maybe(entry, "joules"),
                  text_of(entry, "reason"))  # fmt: skip


def read_of(entry: dict) -> str:
    read = object_of(entry, "read")
    if not read:
        return ""
    why = text_of(read, "reason")
    return (f"A pass reads {or_none(number, size_of(read, 'rows'))} rows of {text_of(read, 'from')}, {or_none(number, size_of(read, 'tokens'))} "
            f"tokens without padding{f' ({why})' if why else ''}.")  # fmt: skip


def row_of(entry: dict) -> Row:
    latency, quality, energy = (object_of(entry, key) for key in ("latency_ms", "quality", "energy"))
    joules, devices = size_of(energy, "joules"), object_of(energy, "by_device")
    return Row(text_of(entry, "precision"), text_of(entry, "device"), text_of(entry, "work"), text_of(entry, "refused"),
               *(size_of(latency, key) for key in ("mean", "p50", "p95", "std")),
               *(size_of(entry, key) for key in ("rows_per_second", "tokens_per_second", "passes", "passes_asked", "bytes_on_disk",
                                                 "bytes_of_weights", "peak_bytes", "peak_rss_bytes")),
               text_of(quality, "name"), maybe(quality, "value"), maybe(quality, "f1"), rows_of(quality), read_of(entry), joules,
               "" if joules is not None else text_of(energy, "reason") or NO_REASON, size_of(energy, "idle_watts"),
               {str(name): size_of(devices, name) for name in devices}, [module_of(one) for one in entries_of(entry, "modules")])  # fmt: skip


def machine_of(machine: dict) -> list[tuple[str, str]]:
    facts = [(name, text_of(machine, name)) for name in ("processor", "vector", "threads")]
    ceilings = object_of(machine, "ceilings")
    speeds = object_of(ceilings, "gflops")
    facts += [(f"GFLOP/s in {name}", or_none(number, size_of(speeds, name))) for name in speeds]
    facts += [("GB/s of memory", or_none(number, size_of(ceilings, "gb_per_second")))]
    heat = maybe(machine, "temperature_c")
    facts += [("temperature", f"{number(heat)} °C" if heat is not None else f"not known: {text_of(machine, 'temperature_reason') or NO_REASON}")]
    return [(name, value) for name, value in facts if value]


def profile_of(result: dict) -> Profile:
    shape = [(name, number(value)) for name in ("batch", "length", "warmup", "measured", "trials") if (value := size_of(result, name)) is not None]
    meters = [(text_of(one, "name"), text_of(one, "device"),
               "measures" if one.get("available") is True else f"does not: {text_of(one, 'reason') or NO_REASON}")
              for one in entries_of(result, "meters")]  # fmt: skip
    rows = [row_of(one) for one in entries_of(result, "rows")]
    if not rows:
        raise ValueError("rows are none")
    return Profile(machine_of(object_of(result, "machine")), shape, meters, size_of(result, "batch"), rows)


def read_profile(path: Path) -> Profile:
    return checked(path, result_of(path, WANTED), profile_of, WANTED)


def joules_text(joules: float | None, why: str, known: list[str]) -> str:
    """`known`: the one reason that the page has said above."""
    if joules is not None:
        return f"{number(joules)} J"
    return "not measured" if known == [why] else f"not measured: {why}"


def reasons_of(profile: Profile) -> list[str]:
    return list(dict.fromkeys(row.no_joules for row in profile.rows if not row.refused and row.joules is None))


def ms_text(value: float) -> str:
    return f"{number(value)} ms"


def is_cut(row: Row) -> bool:
    return row.passes is not None and row.asked is not None and row.passes < row.asked


def passes_text(row: Row) -> str:
    return f"{number(row.passes)} of {number(row.asked)}" if is_cut(row) else or_none(number, row.passes)


def read_notes(profile: Profile, work: str) -> list[str]:
    """Whose rows a pass reads, and that passes lack."""
    rows = profile.of(work)
    said = list(dict.fromkeys(row.read for row in rows if row.read))
    if any(map(is_cut, rows)):
        said.append("Where passes are some of many, time was up before all of them were made (profile.most_seconds).")
    return said


def rows_tables(profile: Profile, work: str) -> str:
    """Two, so that each fits a page: speed, and what it takes and gives."""
    speed, rest = [], []
    for row in profile.of(work):
        quality = f"{row.quality} {quality_text(row.quality, row.value)}" if row.value is not None else NONE
        devices = ", ".join(f"{name} {or_none(lambda v: f'{number(v)} J', joules)}" for name, joules in row.by_device.items())
        speed.append([row.precision, row.device, *(or_none(ms_text, v) for v in (row.mean, row.p50, row.p95, row.std)),
                      or_none(number, row.rows_per_second), or_none(number, row.tokens_per_second), passes_text(row)])  # fmt: skip
        rest.append([row.precision, row.device, *(or_none(bytes_text, v) for v in (row.on_disk, row.weights, row.peak, row.resident)), quality,
                     or_none(number, row.f1), or_none(lambda v: f"{number(v)} W", row.idle), joules_text(row.joules, row.no_joules, reasons_of(profile)) + (f" ({devices})" if devices and row.joules is not None else "")])  # fmt: skip
    return (table(f"Speed, {work}", ["precision", "device", "mean", "p50", "p95", "deviation", "rows/s", "tokens/s", "passes"], speed)
            + "<br>" + table(f"Bytes, quality and energy, {work}", ["precision", "device", "on disk", "weights", "peak of tensors", "resident",
                                                             "quality", "macro F1", "idle", "energy"], rest))  # fmt: skip


def bars(profile: Profile, work: str) -> str:
    """Of each measure that any row has. A row without it stands apart, with the word for it."""
    out = ""
    measures = [("latency", lambda r: r.mean, ms_text, lambda r: (r.p50, r.p95)), ("weights", lambda r: r.weights, bytes_text, None),
                ("on disk", lambda r: r.on_disk, bytes_text, None), ("peak of tensors", lambda r: r.peak, bytes_text, None),
                ("resident memory", lambda r: r.resident, bytes_text, None), ("energy", lambda r: r.joules, lambda v: f"{number(v)} J", None)]  # fmt: skip
    for title, value, text, between in measures:
        having = [row for row in profile.of(work) if value(row) is not None]
        if not having:
            continue
        drawn = [marks.Interval(row.name, profile.precisions.index(row.precision), value(row), *((*between(row), "p50 and p95") if between else ())) for row in having]
        without = [marks.Missing(row.name, "not measured") for row in profile.of(work) if value(row) is None]
        said = f"{title}, {work}" + (" (from p50 to p95, the mean as a dot)" if between else "")
        out += marks.intervals(said, drawn[: marks.MOST_ROWS], without, text, bars=between is None)
    return out


def quality_figure(profile: Profile) -> str:
    rows = [row for row in profile.of("forward") if row.value is not None and row.mean is not None]
    out = ""
    for name in dict.fromkeys(row.quality for row in rows):
        points = [marks.Mark(row.mean, row.value, row.name, profile.precisions.index(row.precision)) for row in rows if row.quality == name]
        out += marks.scatter(f"{name} against latency", points, ms_text, lambda value, name=name: quality_text(name, value), "latency")
    return out


def modules_section(row: Row, known: list[str]) -> str:
    head = ["module", "role", "calls", "ms", "of the pass", "GFLOP/s", "of the roofline", "bound by", "energy"]
    rows = [[one.name, one.role, or_none(number, one.calls), number(one.ms), percent(one.share), or_none(number, one.gflops),
             percent(one.roofline), one.bound or NONE,
             joules_text(one.joules, one.reason or row.no_joules or NO_REASON, known)]
            for one in sorted(row.modules, key=lambda one: -one.ms)]  # fmt: skip
    largest = sorted(row.modules, key=lambda one: -one.ms)[:MOST_MODULES]
    drawn = marks.intervals(f"time by module, {row.name}, {row.work}", [marks.Interval(one.name, 0 if one.bound != "memory" else 1, one.ms) for one in largest],
                            [], ms_text, bars=True)  # fmt: skip
    return (f"<details><summary>{charts.escape(row.name)}, {charts.escape(row.work)}</summary>"
            f'{marks.legend([(0, "bound by arithmetic, or not known"), (1, "bound by memory")])}<div class="charts">{drawn}</div>'
            f"{table(f'Modules, {row.name}', head, rows)}</details>")  # fmt: skip


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def energy_note(profile: Profile) -> str:
    return marks.notes([f"Energy was not measured: {reason}." for reason in reasons_of(profile)])


def work_sections(profile: Profile) -> str:
    works = [work for work in dict.fromkeys([*WORKS, *(row.work for row in profile.rows)]) if profile.of(work)]
    legend = marks.legend(list(enumerate(profile.precisions)))
    out = ""
    for work in works:
        charted = bars(profile, work) + (quality_figure(profile) if work == "forward" else "")
        out += f'<h2>{charts.escape(work.capitalize())}</h2>{legend}<div class="charts">{charted}</div>{marks.notes(read_notes(profile, work))}{rows_tables(profile, work)}'
    return out or "<p>Nothing was measured.</p>"


def body(profile: Profile) -> str:
    refused = [row for row in profile.rows if row.refused]
    not_possible = table("Refused", ["precision", "device", "work", "because"],
                         [[row.precision, row.device, row.work, row.refused] for row in refused]) if refused else "<p>Nothing.</p>"  # fmt: skip
    meters = table("Meters", ["meter", "device", "state"], [[*meter] for meter in profile.meters]) if profile.meters else "<p>None is known.</p>"
    modules = "".join(modules_section(row, reasons_of(profile)) for row in profile.rows if row.modules)
    measured = [(name, value) for name, value in profile.machine]
    return f"""{marks.cards([(name, value) for name, value in profile.shape])}
{energy_note(profile)}
{work_sections(profile)}
<h2>Not possible here</h2>
{not_possible}
<h2>Modules</h2>
{modules or "<p>No module was measured.</p>"}
<h2>Machine and meters</h2>
{table("Machine", ["what", "value"], [[*fact] for fact in measured])}
<h3>Meters</h3>
{meters}"""


def main(arguments: list[str]) -> int:
    return main_of_a_page("report_profile", __doc__, "PROFILE", "name the profile.json of a run", named, read_profile, body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
