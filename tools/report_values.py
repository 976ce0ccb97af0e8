"""Values out of the JSON that Limbeck's commands write, each checked before it is drawn: ValueError says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, TypeVar

from report_runs import INPUT, USAGE, ReportError

LARGEST = 1e15  # larger ones leave no room for a chart's margins
MOST_ENTRIES = 20_000  # of a list
Of = TypeVar("Of")


def value_of(entry: dict, key: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise ValueError(f"{key} is no number that can be drawn")
    return float(value)


def maybe(entry: dict, key: str) -> float | None:
    """None where nothing was measured, which is no zero."""
    return None if entry.get(key) is None else value_of(entry, key)


def size_of(entry: dict, key: str) -> float | None:
    """Of a time, a size or an energy."""
    value = maybe(entry, key)
    if value is not None and value < 0:
        raise ValueError(f"{key} is negative")
    return value


def text_of(entry: dict, key: str) -> str:
    """ "" where there is none."""
    value = entry.get(key)
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise ValueError(f"{key} is {type(value).__name__}, no text")
    return "" if value is None else str(value)


def entries_of(entry: dict, key: str) -> list[dict]:
    found = entry.get(key)
    found = [] if found is None else found
    if not isinstance(found, list) or len(found) > MOST_ENTRIES or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{key} is no list of objects")
    return found


def object_of(entry: dict, key: str) -> dict:
    found = entry.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{key} is no object")
    return found or {}


def rows_of(entry: dict) -> str:
    """On which rows something was measured, equal for equal rows alone; "" where that is not said."""
    rows = object_of(entry, "measured_on")
    if not rows:
        return ""
    first, count, of, length = (int(value_of(rows, key)) for key in ("first", "rows", "of", "sequence_length"))
    masking = text_of(rows, "masking")
    hidden = "" if masking in ("", "none") else f", {masking} hidden"
    return f"rows {first + 1} to {first + count} of {of} ({text_of(rows, 'packing')}, {length} tokens{hidden}) of data {text_of(rows, 'data')}"


def result_of(path: Path, wanted: str) -> dict:
    """What --json or a run's folder holds: the result itself, or an object around it."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(USAGE, f"{path}: {error.strerror}; {wanted}") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(INPUT, f"{path}: {type(error).__name__}: {error}; {wanted}") from None
    result = read.get("result", read) if isinstance(read, dict) else None
    if not isinstance(result, dict):
        raise ReportError(INPUT, f"{path}: no JSON object; {wanted}")
    return result


def checked(path: Path, result: dict, make: Callable[[dict], Of], wanted: str) -> Of:
    """What `make` makes of it; what it stumbles over is a fault of the file."""
    try:
        return make(result)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ReportError(INPUT, f"{path}: {type(error).__name__}: {error}; {wanted}") from None
