"""The dtype contract of a run as HTML: modules, casts of a step, memory plan."""

from __future__ import annotations

import json
import re
from html import escape

from report_numbers import bytes_text


COUNTS = {"modules": ("modules", "parameters", "bytes"), "casts": ("count", "bytes")}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18


def fault_of(contract: object) -> str:
    """What keeps it from being shown; "" for nothing."""
    if not isinstance(contract, dict):
        return "is no object"
    for part, counts in COUNTS.items():
        rows = contract.get(part, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return f"{part} are no list of objects"
        for number, row in enumerate(rows):
            for key, value in row.items():
                if not _is_number(value) if key in counts else isinstance(value, (list, dict)):
                    return f"{part}, entry {number}: {key[:40]!r} is {type(value).__name__}"
    memory = contract.get("memory", {})
    if not isinstance(memory, dict) or not all(map(_is_number, memory.values())):
        return "memory is no object of numbers"
    return ""


def table(name: str, head: list[str], rows: list[list[str]]) -> str:
    """On a narrow screen a row is a block and each cell says its column, which is why it carries the label."""
    text = "".join(f'<th scope="col">{escape(column)}</th>' for column in head)
    body = ""
    for first, *rest in rows:
        body += f'<tr><th scope="row">{escape(first)}</th>'
        body += "".join(f'<td data-label="{escape(column, quote=True)}"><span>{escape(v)}</span></td>' for column, v in zip(head[1:], rest))
        body += "</tr>"
    return f'<table class="left" aria-label="{escape(name, quote=True)}"><tr>{text}</tr>{body}</table>'


def modules_table(modules: list[dict]) -> str:
    head = ["module", "role", "storage", "in", "compute", "out", "device", "parameters", "bytes", "from"]
    rows = []
    for module in modules:
        row = [str(module.get(key, "")) for key in head]
        row[0] += f" ×{module['modules']}" if module.get("modules", 1) > 1 else ""
        row[7], row[8] = f"{module.get('parameters', 0):,}", bytes_text(module.get("bytes", 0))
        rows.append(row)
    return table("Modules", head, rows)


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
    rows = [[str(part) for part in key] + [f"{n:,}", bytes_text(size)] for key, (n, size) in sums.items()]
    return table("Casts of one step", head, rows)


def memory_bars(memory: dict[str, float]) -> str:
    largest = max(memory.values(), default=0) or 1
    rows = "".join(
        f'<div class="bar"><span>{escape(what)}</span><div><i style="width:{100 * size / largest:.1f}%"></i></div>'
        f"<b>{bytes_text(size)}</b></div>"
        for what, size in memory.items()
    )
    return f'<div class="bars">{rows}</div>'


def sections(contracts: dict[str, dict]) -> str:
    """By the names of the runs; one section a different contract, headed by the runs that have it."""
    kinds: dict[str, list[str]] = {}
    for name, contract in contracts.items():
        key = {part: contract.get(part) for part in ("modules", "casts", "memory")}
        kinds.setdefault(json.dumps(key, sort_keys=True), []).append(name)
    out = ""
    for index, owners in enumerate(kinds.values()):
        contract = contracts[owners[0]]
        who = f": {escape(', '.join(owners))}" if len(kinds) > 1 else ""
        is_open = " open" if index == 0 else ""
        out += f"<details{is_open}><summary>Contract{who}</summary><h3>Modules</h3>"
        out += modules_table(contract.get("modules", []))
        out += f"<h3>Casts of one step</h3>{casts_table(contract.get('casts', []))}"
        out += f"<h3>Memory plan</h3>{memory_bars(contract.get('memory', {}))}</details>"
    return out or "<p>No contract.json in the run folders.</p>"
