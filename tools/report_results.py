"""What commands other than `train` leave behind, told apart by what stands in it: sweeps, profiles, curves of budgets."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Callable

import report_budgets as budgets
import report_profile as profile
import report_sweep as sweep
from guarded_work import GIB, step
from report_files import IN_A_RUN, named
from report_runs import INPUT, ReportError
from report_values import checked, result_of

WANTED = "wanted the JSON of `limbeck sweep`, `limbeck profile` or `limbeck quantize --budgets`"


@dataclass
class Kind:
    title: str
    recognises: Callable[[dict], bool]
    make: Callable[[dict], object]
    body: Callable[[object], str]


KINDS = [Kind("Sweep", sweep.is_sweep, sweep.sweep_of, sweep.body), Kind("Profile", profile.is_profile, profile.profile_of, profile.body),
         Kind("Budgets", budgets.is_curve, budgets.curve_of, lambda curve: budgets.body(*curve))]  # fmt: skip


@dataclass
class Result:
    kind: Kind
    path: Path
    value: object

    @property
    def label(self) -> str:
        return named(self.path)


def read_any(path: Path) -> Result:
    step("reading it", path, 30, GIB, "name the JSON of one command")
    result = result_of(path, WANTED)
    kind = next((kind for kind in KINDS if kind.recognises(result)), None)
    if kind is None:
        raise ReportError(INPUT, f"{path}: neither a sweep, a profile nor a curve of budgets; {WANTED}")
    return Result(kind, path, checked(path, result, kind.make, WANTED))


def files_in(folder: Path) -> list[Path]:
    return [folder / name for name in IN_A_RUN if (folder / name).is_file()]


def section(result: Result) -> str:
    """As its own page has it, a heading lower."""
    body = result.kind.body(result.value)
    for level in (3, 2):
        body = body.replace(f"<h{level}>", f"<h{level + 1}>").replace(f"</h{level}>", f"</h{level + 1}>")
    return f"<h2>{result.kind.title}: {escape(result.label)}</h2>{body}"
