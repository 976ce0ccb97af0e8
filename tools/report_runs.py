"""Reads run folders for the report: what was measured at which step, and on which validation set."""

from __future__ import annotations

import configparser
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from guarded_work import Fault
from report_contract import fault_of

USAGE, INPUT = 2, 3  # exit codes, as the program's
MOST_STEPS, LARGEST = 10**15, 1e300  # larger values leave no room for a chart's margins
BOOKKEEPING = {"step", "phase", "seconds", "saved_step"}


class ReportError(Fault):
    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ValidationSet:
    """What makes two evaluations comparable: the same folder, and as many tokens of it."""

    folder: str = ""  # "" and 0: the run does not say
    targets: int = 0


@dataclass
class Run:
    folder: Path
    name: str
    group: str
    # By name, then step; NaN where the value was not finite. What a resumed run did again stands once.
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    targets: dict[int, int] = field(default_factory=dict)  # of the evaluations that say so, by step
    validation: str = ""
    steps: int = 0
    unread: int = 0
    contract: dict | None = None
    recipe: str | None = None

    def points(self, name: str) -> list[tuple[int, float]]:
        return sorted(self.series.get(name, {}).items())

    def set_at(self, step: int) -> ValidationSet:
        """Of the evaluation of that step. One that states no count is taken for one on the run's last set. Where the
        count has changed on the way the recipe names the last set only, and the one before is this run's alone."""
        newest = self.targets[max(self.targets)] if self.targets else 0
        targets = self.targets.get(step, newest)
        return ValidationSet(self.validation if targets == newest else f"{self.name} before its set changed", targets)

    def points_on(self, name: str, wanted: ValidationSet) -> list[tuple[int, float]]:
        return [(step, value) for step, value in self.points(name) if self.set_at(step) == wanted]

    def last_on(self, name: str, wanted: ValidationSet) -> float | None:
        return next((v for _, v in reversed(self.points_on(name, wanted)) if math.isfinite(v)), None)


def group_of(name: str) -> str:
    return re.sub(r"[-_. ]*(?:seed)?[-_. ]*\d+$", "", name) or name


def shown_name(name: str, phase: str) -> str:
    """The phase stands before the name, where it is not training: eval.loss is another thing than loss."""
    return name if phase == "train" or name.startswith(f"{phase}.") else f"{phase}.{name}"


def read_line(run: Run, entry: dict) -> None:
    step, phase = int(entry["step"]), str(entry.get("phase", "train"))
    if not 0 <= step < MOST_STEPS:
        raise ValueError(f"step {step}")
    run.steps = max(run.steps, step)
    for name, value in entry.items():
        if name in BOOKKEEPING or isinstance(value, (str, bool, list, dict)):
            continue
        if name == "targets" and phase == "eval":
            run.targets[step] = int(value or 0)
            continue
        finite = value is not None and abs(value) < LARGEST
        run.series.setdefault(shown_name(name, phase), {})[step] = float(value) if finite else math.nan


def read_metrics(run: Run) -> None:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        raise ReportError(INPUT, f"{run.folder}: no metrics.jsonl, wanted a run folder: name the one given to --run")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            read_line(run, json.loads(line))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            run.unread += 1  # the last line of a run that was killed while writing
    if not run.series:
        raise ReportError(INPUT, f"{path}: no line with a step and a value, wanted the lines of a run")


def validation_of(recipe: str) -> str:
    """data.validation of a resolved recipe; "" where there is none, or the text is no recipe."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True, inline_comment_prefixes=("#", ";"))
    try:
        parser.read_string("[ ]\n" + recipe)  # keys may stand before the first section
    except (configparser.Error, AttributeError):  # the second for a line that goes on with a key without a value
        return ""
    return parser.get("data", "validation", fallback="") or parser.get(" ", "data.validation", fallback="") or ""


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
        except (ValueError, RecursionError) as error:
            raise ReportError(INPUT, f"{path / 'contract.json'}: {error}; wanted what `limbeck check --json` writes")
        run.contract = read.get("result", read) if isinstance(read, dict) else read  # `check --json` wraps it
        if fault := fault_of(run.contract):
            raise ReportError(INPUT, f"{path / 'contract.json'}: {fault}; wanted what `limbeck check --json` writes")
    if (path / "recipe.ini").is_file():
        run.recipe = (path / "recipe.ini").read_text(encoding="utf-8", errors="replace")
        run.validation = validation_of(run.recipe)
    return run


def validation_sets(runs: list[Run]) -> dict[ValidationSet, str]:
    """Every set that anything was evaluated on, with the name that tells it from the others."""
    sets = dict.fromkeys(
        run.set_at(step) for run in runs for name in run.series if name.startswith("eval.") for step in run.series[name]
    )
    names = {}
    for one in sets:
        others = [other.folder for other in sets if other.folder != one.folder]
        parts, take = Path(one.folder).parts, 1
        while take < len(parts) and any(Path(other).parts[-take:] == parts[-take:] for other in others):
            take += 1
        name = "/".join(part.strip("/") for part in parts[-take:]).lstrip("/") or "not named"
        names[one] = f"{name}, {one.targets:,} tokens" if one.targets else name
    return names
