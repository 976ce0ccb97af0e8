#!/usr/bin/env python3
"""bench_rounding.py: what error-compensated rounding brings back of what rounding to nearest loses, format by format.

Quantizes one model by limbeck quantize with --rounding=nearest and =compensated and holds both against its floats on rows
that calibrated nothing: bytes, perplexity, and the KL divergence with the middle 95 % of rows drawn again.

  tools/bench_rounding.py --model runs/quickstart/teacher/final --data runs/quickstart/data/validation

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
ROUNDINGS = ("nearest", "compensated")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--calibration-rows", type=int, default=128)
    parser.add_argument("--held-out-rows", type=int, default=256)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limbeck", type=Path, default=ROOT / "build" / "release" / "bin" / "limbeck")
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace, form: str, rounding: str, folder: Path) -> dict:
    said = folder / f"{form}-{rounding}.json"
    keys = ("model", "data", "dtype", "calibration_rows", "held_out_rows", "sequence_length", "threads")
    command = [options.limbeck, "quantize", "--quiet", f"--quantize={form}", f"--rounding={rounding}", f"--json={said}",
               f"--output={folder / said.stem}", *(f"--{key.replace('_', '-')}={getattr(options, key)}" for key in keys)]  # fmt: skip
    begin = time.monotonic()
    subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, check=True)
    result = json.loads(said.read_text())["result"]
    return result["measured"] | {"bytes": result["bytes"], "seconds": time.monotonic() - begin, "rounding": result.get("rounding")}


def main(arguments: list[str]) -> int:
    options, found = parsed(arguments), {}
    print("| format | bytes | perplexity | compensated | KL to floats | compensated | of that | seconds |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for form in options.formats.split(","):
            nearest, compensated = (measured(options, form, rounding, Path(folder)) for rounding in ROUNDINGS)
            found[form] = {"nearest": nearest, "compensated": compensated}
            kl = [f"{one['kl']:.6f} ({one['kl_low']:.6f} to {one['kl_high']:.6f})" for one in (nearest, compensated)]
            print(f"| {form} | {compensated['bytes']} | {nearest['perplexity']:.4f} | {compensated['perplexity']:.4f} | {kl[0]} | {kl[1]} | "
                  f"{compensated['kl'] / nearest['kl']:.2f} | {nearest['seconds']:.0f}, {compensated['seconds']:.0f} |", flush=True)  # fmt: skip
    one = next(iter(found.values()))["nearest"]
    print(f"in floats: perplexity {one['float_perplexity']:.4f}; {one['rows']} held-out rows, {one['targets']} targets")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
