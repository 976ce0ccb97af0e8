#!/usr/bin/env python3
"""bench_checkpoint.py: what asynchronous checkpoints add to a training run.

The quickstart's student and teacher (from random weights, which cost the same), saved at every Nth step, asynchronously
and, as a control, synchronously. Within each run the N/2 steps after a save (staging, the writer beside the steps) are
held against the N/2 steps before the next one, which no save touches: a second apart, so that the machine's moods are in
both. Times are the wall clock's at the end of each step. What a save costs is then told as a share of the steps between
two saves, with an interval by resampling of pairs.

  tools/bench_checkpoint.py                        200 steps, a save each 10, six rounds
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
sys.path.insert(0, str(ROOT / "tools"))
import bench_data  # noqa: E402

BAR = 0.03


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        command = [sys.executable, ROOT / "tools" / "prepare_data.py", "--from-python-stdlib", "--train-vocabulary", "2048",
                   "--max-documents", "400", "--train-characters", "1000000", "--validation-fraction", "0.04",
                   "--out", folder / "data", "--quiet"]  # fmt: skip
        subprocess.run(list(map(str, command)), check=True)

    def run(self, *flags: str, steps: int = 0) -> dict:
        """The wall clock at the end of each step, and the seconds of a save's parts."""
        self.count += 1
        run = self.folder / f"run{self.count}"
        models = ROOT / "recipes" / "models"
        command = [self.options.limbeck, "train", ROOT / "recipes" / "quickstart.ini", "--quiet",
                   f"--teacher.model={models / 'quickstart_teacher'}", "--teacher.init=random",
                   f"--data.train={self.folder / 'data' / 'train'}",
                   f"--data.validation={self.folder / 'data' / 'validation'}",
                   f"--train.steps={steps or self.options.steps} steps", "--eval.every=0", "--eval.batches=1",
                   f"--threads={self.options.threads}", f"--run={run}", *flags]  # fmt: skip
        subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, check=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        saves = [line for line in lines if line["phase"] == "checkpoint"]
        found = {"ends": bench_data.step_times(run)}
        for part in PARTS:
            if saves:
                found[part] = statistics.median(line[part] for line in saves)
        subprocess.run(["rm", "-rf", str(run)], check=True)
        return found


def pairs_of(ends: list[float], distance: int) -> list[tuple[float, float]]:
    """Seconds of the steps after each save and of as many before the next; a save follows each step of `distance`."""
    half, found = distance // 2, []
    for save in range(distance, len(ends) - distance + 1, distance):
        at = save - 1  # ends[at] is the end of the step that the save follows
        found.append((ends[at + half] - ends[at], ends[at + distance] - ends[at + distance - half]))
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limbeck", type=Path, default=ROOT / "build" / "release" / "bin" / "limbeck")
    return parser.parse_args(arguments)


WAYS = {"async": "yes", "sync": "no"}
PARTS = ("stage_seconds", "write_seconds", "fsync_seconds", "commit_seconds", "bytes")


def share_of(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(after - before for after, before in pairs) / statistics.median(before for _, before in pairs)


def interval(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Where the share lies: the middle 90 % of shares of resampled pairs."""
    chance = random.Random(0)
    shares = sorted(share_of(chance.choices(pairs, k=len(pairs))) for _ in range(2000))
    return shares[100], shares[-101]


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    distance = 2 * options.every  # a save, then as many steps without
    pairs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    print(f"{options.steps} steps, {options.threads} threads; a step's median milliseconds, the {options.every} after a "
          f"save and the {options.every} before the next")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        bench = Bench(options, Path(folder))
        bench.run("--checkpoint.keep=0", steps=20)  # files into the page cache
        order = random.Random(1)
        for turn in range(options.rounds):
            for way in order.sample(list(WAYS), len(WAYS)):  # who comes after whom changes
                run = bench.run("--checkpoint.keep=2", f"--checkpoint.async={WAYS[way]}", f"--checkpoint.every={distance}")
                own = pairs_of(run["ends"], distance)
                pairs[way] += own
                found[way].append(run)
                after, before = (1e3 * statistics.median(column) / options.every for column in zip(*own))
                print(f"round {turn + 1}  {way:<6}{after:>8.2f}{before:>8.2f}", flush=True)

    verdicts = {}
    for way in WAYS:
        parts = ", ".join(f"{part.removesuffix('_seconds')} {1000 * statistics.median(run[part] for run in found[way]):.0f} ms"
                          for part in PARTS if part != "bytes")  # fmt: skip
        share, (low, high) = share_of(pairs[way]), interval(pairs[way])
        verdicts[way] = share, low, high
        print(f"{way}: a save each {options.every} steps adds {share:.1%} (90 %: {low:.1%} to {high:.1%}) over "
              f"{len(pairs[way])} pairs; one save of {found[way][0]['bytes'] / 1e6:.1f} MB: {parts}")  # fmt: skip
    share, low, high = verdicts["async"]
    verdict = "held" if high <= BAR else "MISSED" if low > BAR else "UNDECIDED, a busy machine"
    print(f"{verdict}: async adds {share:.1%}, bar {BAR:.0%}")
    return 0 if verdict == "held" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
