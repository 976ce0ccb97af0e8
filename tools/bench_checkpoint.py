#!/usr/bin/env python3
"""bench_checkpoint.py: what asynchronous checkpoints add to a training run.

The quickstart's student and teacher (from random weights, which cost the same), without checkpoints, with asynchronous
and, as a control, with synchronous ones, each round in another order, a process each. A save adds to the time between
two steps (staging, metrics), which no step's own seconds show, and slows the steps it runs beside: the figure is the
whole of training, from the result's seconds, which end before the final model is written and after the last save was
waited for. The process's processor seconds, with those of its start, are printed too: a busy machine changes them less.

  tools/bench_checkpoint.py                        200 steps, every 10, six rounds
  tools/bench_checkpoint.py --rounds 9 --every 50

Run it by .venv/bin/python. Exit code 1: the share is above 3 %, or the machine too busy to tell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.03


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        command = [sys.executable, ROOT / "tools" / "prepare_data.py", "--from-python-stdlib", "--train-vocabulary", "2048",
                   "--max-documents", "400", "--train-characters", "1000000", "--validation-fraction", "0.04",
                   "--out", folder / "data", "--quiet"]  # fmt: skip
        subprocess.run(list(map(str, command)), check=True)

    def run(self, *flags: str, steps: int = 0) -> dict[str, float]:
        """Seconds of training, of the median step and of a save's parts."""
        self.count += 1
        run, result = self.folder / f"run{self.count}", self.folder / f"result{self.count}.json"
        models = ROOT / "recipes" / "models"
        command = [self.options.limbeck, "train", ROOT / "recipes" / "quickstart.ini", "--quiet",
                   f"--teacher.model={models / 'quickstart_teacher'}", "--teacher.init=random",
                   f"--data.train={self.folder / 'data' / 'train'}",
                   f"--data.validation={self.folder / 'data' / 'validation'}",
                   f"--train.steps={steps or self.options.steps} steps", "--eval.every=0", "--eval.batches=1",
                   f"--threads={self.options.threads}", f"--run={run}", f"--json={result}", *flags]  # fmt: skip
        child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise SystemExit(f"exit {child.returncode}: {' '.join(map(str, command))}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["seconds"] for line in lines if line["phase"] == "train"]
        saves = [line for line in lines if line["phase"] == "checkpoint"]
        found = {"whole": json.loads(result.read_text())["result"]["seconds"], "steps": sum(steps),
                 "step": statistics.median(steps), "cpu": usage.ru_utime + usage.ru_stime, "saves": len(saves)}  # fmt: skip
        for part in ("stage_seconds", "write_seconds", "fsync_seconds", "commit_seconds", "bytes"):
            if saves:
                found[part] = statistics.median(line[part] for line in saves)
        subprocess.run(["rm", "-rf", str(run)], check=True)
        return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limbeck", type=Path, default=ROOT / "build" / "release" / "bin" / "limbeck")
    return parser.parse_args(arguments)


WAYS = {"none": ["--checkpoint.keep=0"],
        "async": ["--checkpoint.keep=2", "--checkpoint.async=yes"],
        "sync": ["--checkpoint.keep=2", "--checkpoint.async=no"]}  # fmt: skip


def share_of(seconds: list[float], base: list[float]) -> float:
    return statistics.median(seconds) / statistics.median(base) - 1


def interval(seconds: list[float], base: list[float]) -> tuple[float, float]:
    """Where the share lies: the middle 90 % of shares of resampled rounds."""
    chance = random.Random(0)
    shares = sorted(share_of(chance.choices(seconds, k=len(seconds)), chance.choices(base, k=len(base)))
                    for _ in range(2000))  # fmt: skip
    return shares[100], shares[-101]


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    print(f"{options.steps} steps, checkpoint.every={options.every}, {options.threads} threads, seconds of training")
    print("round" + "".join(f"{way:>9}" for way in WAYS))
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        bench = Bench(options, Path(folder))
        bench.run(*WAYS["none"], steps=20)  # files into the page cache
        order = random.Random(1)
        for turn in range(options.rounds):
            for way in order.sample(list(WAYS), len(WAYS)):  # who comes after whom changes
                flags = WAYS[way] + ([] if way == "none" else [f"--checkpoint.every={options.every}"])
                found[way].append(bench.run(*flags))
            print(f"{turn + 1:<5}" + "".join(f"{found[way][-1]['whole']:>9.2f}" for way in WAYS), flush=True)

    def of(way: str, what: str) -> list[float]:
        return [run[what] for run in found[way]]

    for way in ("async", "sync"):
        parts = ", ".join(f"{part} {1000 * statistics.median(of(way, part + '_seconds')):.0f} ms"
                          for part in ("stage", "write", "fsync", "commit"))  # fmt: skip
        low, high = interval(of(way, "whole"), of("none", "whole"))
        print(f"{way}: adds {share_of(of(way, 'whole'), of('none', 'whole')):.1%} (90 %: {low:.1%} to {high:.1%}); inside "
              f"the steps {share_of(of(way, 'steps'), of('none', 'steps')):.1%}, processor seconds "
              f"{share_of(of(way, 'cpu'), of('none', 'cpu')):.1%}; one save of {found[way][0]['bytes'] / 1e6:.1f} MB: {parts}")  # fmt: skip
    low, high = interval(of("async", "whole"), of("none", "whole"))
    verdict = "held" if high <= BAR else "MISSED" if low > BAR else "UNDECIDED, a busy machine"
    print(f"{verdict}: async adds {share_of(of('async', 'whole'), of('none', 'whole')):.1%}, bar {BAR:.0%}")
    return 0 if verdict == "held" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
