#!/usr/bin/env python3
"""bench_rounding.py: what compensated and learned rounding, and training the codes, bring back of what rounding to nearest loses.

Quantizes one model by limbeck quantize with --rounding=nearest, =compensated and =learned and holds each against its floats on rows
that calibrated nothing: bytes, perplexity, and the KL divergence with the middle 95 % of rows drawn again.

  tools/bench_rounding.py --model runs/quickstart/teacher/final --data runs/quickstart/data/validation

With --train DIR also what student.train_codes makes of it, the float model being the teacher: codes that are calibrated and
trained on DIR, and all of --data held against the floats by limbeck eval.

  tools/bench_rounding.py --model runs/quickstart/teacher/final --data runs/quickstart/data/validation \\
    --train runs/quickstart/data/train --formats int4-g32,nf4 --dtype float32

Run it by .venv/bin/python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMATS = "int4-g32,int4-g64,int4,int4-sym-g32,int4-sym-g64,int4-sym,nf4,int8"
ROUNDINGS = ("nearest", "compensated", "learned")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--calibration-rows", type=int, default=128)
    parser.add_argument("--held-out-rows", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--rounding-steps", type=int, default=200, help="of learned rounding, a layer")
    parser.add_argument("--train", type=Path, help="token shards to train codes on")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limbeck", type=Path, default=ROOT / "build" / "release" / "bin" / "limbeck")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace, form: str, rounding: str, folder: Path) -> dict:
    said = folder / f"{form}-{rounding}.json"
    keys = ("model", "data", "dtype", "calibration_rows", "held_out_rows", "sequence_length", "threads")
    command = [options.limbeck, "quantize", "--quiet", f"--quantize={form}", f"--rounding={rounding}", f"--json={said}",
               f"--output={folder / said.stem}", *(f"--{key.replace('_', '-')}={getattr(options, key)}" for key in keys)]  # fmt: skip
    if rounding == "learned":
        command.append(f"--rounding-steps={options.rounding_steps}")
    begin = time.monotonic()
    subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, check=True)
    result = json.loads(said.read_text())["result"]
    return result["measured"] | {"bytes": result["bytes"], "seconds": time.monotonic() - begin,
                                 "rounding": result.get("rounding"), "learned": result.get("learned")}  # fmt: skip


RECIPE = """[teacher]
kind = self
[student]
model = {model}
dtype = {dtype}
quantize = {form}
train_codes = true
[data]
train = {train}
validation = {data}
batch_size = 8
sequence_length = {sequence_length}
[objective]
alpha = 1
[optim]
learning_rate = {learning_rate}
schedule = cosine
warmup = 5 %
weight_decay = 0
[train]
steps = {steps} steps
"""


def trained(options: argparse.Namespace, form: str, folder: Path) -> dict[str, dict]:
    """By how the codes came about, what limbeck eval finds of them on rows that none of it has seen."""
    recipe, run, said = folder / f"{form}.ini", folder / f"{form}-run", folder / f"{form}-eval.json"
    paths = {key: getattr(options, key).resolve() for key in ("model", "train", "data")}
    recipe.write_text(RECIPE.format(**(vars(options) | paths), form=form))
    limbeck = lambda *words: subprocess.run(list(map(str, [options.limbeck, *words, f"--threads={options.threads}", "--quiet"])),
                                            stdout=subprocess.DEVNULL, check=True)  # fmt: skip # noqa: E731
    for rounding in ROUNDINGS:
        limbeck("quantize", f"--model={options.model}", f"--quantize={form}", f"--rounding={rounding}", f"--dtype={options.dtype}",
                f"--data={options.train}", f"--calibration-rows={options.calibration_rows}", "--held-out-rows=8",
                f"--sequence-length={options.sequence_length}", f"--output={folder / f'{form}-{rounding}-of-train'}",
                *([f"--rounding-steps={options.rounding_steps}"] if rounding == "learned" else []))  # fmt: skip
    begin = time.monotonic()
    limbeck("train", recipe, f"--run={run}")
    seconds, found = time.monotonic() - begin, {}
    folders = {rounding: folder / f"{form}-{rounding}-of-train" for rounding in ROUNDINGS} | {"trained": run / "final"}
    for name, codes in folders.items():
        limbeck("eval", recipe, f"--checkpoint={codes}", f"--json={said}")
        found[name] = json.loads(said.read_text())["result"]
    found["trained"]["seconds"] = seconds
    return found


def print_trained(options: argparse.Namespace, found: dict, folder: Path) -> None:
    print("| format | codes | perplexity | KL to floats | of nearest | first choice of the floats | seconds of training |\n|---|---|---|---|---|---|---|")
    for form in options.formats.split(","):
        by_codes = trained(options, form, folder)
        found[form]["held_out"] = by_codes
        for name, one in by_codes.items():
            print(f"| {form} | {name} | {one['perplexity']:.4f} | {one['kl']:.6f} | {one['kl'] / by_codes['nearest']['kl']:.2f} | "
                  f"{one['top1_agreement']:.4f} | {one.get('seconds', 0):.0f} |", flush=True)  # fmt: skip
    one = by_codes["nearest"]
    print(f"in floats: perplexity {one['teacher_perplexity']:.4f}; {one['targets']:.0f} targets; "
          f"{options.steps} updates of 8 x {options.sequence_length} tokens, learning rate {options.learning_rate}")  # fmt: skip


def main(arguments: list[str]) -> int:
    options, found = parsed(arguments), {}
    print("| format | bytes | rounding | perplexity | KL to floats | of nearest | layers better than compensated | seconds |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for form in options.formats.split(","):
            found[form] = {}
            for rounding in ROUNDINGS:
                one = found[form][rounding] = measured(options, form, rounding, Path(folder))
                layers = (one["learned"] or {}).values()
                better = f"{sum(layer['learned'] < layer['compensated'] for layer in layers)} of {len(layers)}" if layers else ""
                print(f"| {form} | {one['bytes']} | {rounding} | {one['perplexity']:.4f} | {one['kl']:.6f} ({one['kl_low']:.6f} to {one['kl_high']:.6f}) | "
                      f"{one['kl'] / found[form]['nearest']['kl']:.2f} | {better} | {one['seconds']:.0f} |", flush=True)  # fmt: skip
        one = next(iter(found.values()))["nearest"]
        print(f"in floats: perplexity {one['float_perplexity']:.4f}; {one['rows']} held-out rows, {one['targets']} targets")
        if options.train:
            print_trained(options, found, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
