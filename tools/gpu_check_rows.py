"""What tools/gpu_check keeps: rows, in a JSON file that is whole after each of them, and their Markdown tables."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, RAN_OVER, MEASURED, SEEN, SKIPPED = "passed", "failed", "ran over", "measured", "seen", "skipped"
OUTCOMES = (PASSED, FAILED, RAN_OVER, MEASURED, SEEN, SKIPPED)
BAD = (FAILED, RAN_OVER)

# Rows of README's GPU table that a check can fill; there they have the same names.
OPERATORS, PYTHON_OPERATORS = "CUDA operators against float64", "`torch.ops.limbeck.*` on CUDA tensors"
FULL, PACKED, BFLOAT16, FLOAT16 = "training in float32", "training on packed rows", "training in bfloat16", "training in float16 with a loss scale"
LORA, NF4 = "training a LoRA adapter", "training a LoRA adapter on an NF4 base"
EXPERTS = "training mixtures of experts"
SAME_BITS, RESUME, SANITIZER = "the same bits twice", "the same bits resumed", "compute-sanitizer finds nothing"
FLASH_3 = "attention by FlashAttention 3 (`flash_attention_3 = LIB.so`)"
GRAPHS = "forward and backward as a CUDA graph (`train.cuda_graphs = on`)"
SPEED, PLAN = "speed against PyTorch and Liger", "memory plan against the measured peak"
FEATURES = (OPERATORS, PYTHON_OPERATORS, FULL, PACKED, BFLOAT16, FLOAT16, LORA, NF4, EXPERTS, SAME_BITS, RESUME, SANITIZER, FLASH_3, GRAPHS, SPEED,
            PLAN)  # fmt: skip


@dataclass
class Row:
    """`device` is where it really ran. A dry row has no number that was measured on a GPU, and says dry."""

    section: str
    name: str
    outcome: str
    note: str = ""
    feature: str = ""  # of README's table
    device: str = ""
    dry: bool = False
    value: float | None = None
    unit: str = ""
    peers: dict[str, float] = dataclasses.field(default_factory=dict)  # in the same unit
    roofline: float | None = None  # the floor, as a share of the value
    peak_mib: float | None = None
    at_second: float = 0.0  # since the section began

    def __post_init__(self):
        if self.outcome not in OUTCOMES:
            raise ValueError(f"row {self.name}: outcome {self.outcome!r}, wanted one of {', '.join(OUTCOMES)}")


class Results:
    """One file: written anew beside itself and renamed, so that who reads it at any moment reads all rows until then."""

    def __init__(self, file: Path, about: dict):
        self.file, self.about, self.rows = file, about, []
        self.write(finished=False)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.write(finished=False)

    def write(self, finished: bool) -> None:
        everything = {**self.about, "finished": finished, "rows": [dataclasses.asdict(row) for row in self.rows]}
        beside = self.file.with_name(self.file.name + ".new")
        with open(beside, "w") as out:
            out.write(json.dumps(everything, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, self.file)


def read_results(file: Path) -> tuple[dict, list[Row]]:
    try:
        about = json.loads(file.read_text())
        rows = [Row(**row) for row in about.pop("rows")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no results of tools/gpu_check ({error}): give the gpu_check.json of its --out") from None
    return about, rows


def exit_code(rows: list[Row]) -> int:
    """1 as well when nothing at all was found right: an empty check has shown nothing."""
    return 1 if not rows or any(row.outcome in BAD for row in rows) else 0


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    value = f"{number(row.value)} {row.unit}".strip() if row.value is not None else ""
    peers = ", ".join(f"{name} {number(peer)}" for name, peer in row.peers.items())
    share = f"{100 * row.roofline:.0f} %" if row.roofline is not None else ""
    outcome = f"{row.outcome} (dry)" if row.dry else row.outcome
    note = " ".join(row.note.replace("|", "/").split())
    return [row.section, row.name, outcome, value, peers, share, number(row.peak_mib), row.device, note[:300]]


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)


def markdown(about: dict, rows: list[Row]) -> str:
    heads = ["section", "row", "outcome", "value", "peers", "of the roofline", "peak MiB", "on", "note"]
    title = (f"Dry run of tools/gpu_check, {about['date']}: nothing here was measured on a GPU." if about["dry"] else
             f"tools/gpu_check, {about['date']}, {about['card']}, driver {about['driver']}.")  # fmt: skip
    text = f"{title}\n\n{markdown_table(heads, [cells(row) for row in rows])}\n"
    return text + "\nFor README's GPU table:\n\n" + feature_table(about, rows)


def feature_table(about: dict, rows: list[Row]) -> str:
    """A feature ran on the GPU when each of its rows did, and none was bad."""
    lines = []
    for feature in FEATURES:
        own = [row for row in rows if row.feature == feature]
        ran = [row for row in own if not row.dry and row.outcome in (PASSED, MEASURED)]
        bad = [row for row in own if row.outcome in BAD]
        if bad:
            state = f"**{bad[0].outcome}**: {bad[0].name}" + (" (dry run)" if bad[0].dry else f", {about['date']}, {about['card']}")
        else:
            state = f"{about['date']}, {about['card']}" if ran else "never"
        lines.append([feature, state])
    return markdown_table(["feature", "run on a GPU"], lines) + "\n"
