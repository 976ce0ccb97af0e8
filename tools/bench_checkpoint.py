#!/usr/bin/env python3
"""bench_checkpoint.py: what asynchronous checkpoints add to a training run.

The quickstart's student and teacher (from random weights, which cost the same), with checkpoint.every=10 and with
checkpoint.keep=0, in turn (A B A B ...), a process each. A save adds to the time between two steps (staging, metrics),
which no step's own seconds show, and slows the steps it runs beside: the figure is the whole of training, from the
result's seconds, which end before the final model is written and after the last save was waited for. The process's
processor seconds, with those of its start, are printed too: a busy machine changes them less.

  tools/bench_checkpoint.py                        200 steps, every 10, three rounds
  tools/bench_checkpoint.py --rounds 5 --every 50

Run it by .venv/bin/python. Exit code 1: the share is above 3 %, or the rounds are too far apart to tell.
"""

from __future__ import annotations

import argparse
import json
import os
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limbeck", type=Path, default=ROOT / "build" / "release" / "bin" / "limbeck")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    shares, step_shares, cpu_shares = [], [], []
    print(f"{options.steps} steps, checkpoint.every={options.every} against checkpoint.keep=0, {options.threads} threads")
    print(f"{'round':<7}{'with':>9}{'without':>9}{'share':>9}{'median step':>13}{'without':>9}{'share':>9}   one save")
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        bench = Bench(options, Path(folder))
        bench.run("--checkpoint.keep=0", steps=20)  # files into the page cache
        for turn in range(options.rounds):
            saving = ("--checkpoint.keep=2", f"--checkpoint.every={options.every}", "--checkpoint.async=yes")
            pair = [bench.run(*saving), bench.run("--checkpoint.keep=0")]
            one, none = pair
            shares.append(one["whole"] / none["whole"] - 1)
            step_shares.append(one["steps"] / none["steps"] - 1)
            cpu_shares.append(one["cpu"] / none["cpu"] - 1)
            parts = ", ".join(f"{name} {1000 * one[name + '_seconds']:.0f} ms" for name in ("stage", "write", "fsync", "commit"))
            print(f"{turn + 1:<7}{one['whole']:>8.2f}s{none['whole']:>8.2f}s{shares[-1]:>9.1%}{1000 * one['step']:>11.1f}ms"
                  f"{1000 * none['step']:>7.1f}ms{one['step'] / none['step'] - 1:>9.1%}   {one['bytes'] / 1e6:.1f} MB: {parts}",
                  flush=True)  # fmt: skip
    share = statistics.median(shares)
    told = max(shares) <= BAR or min(shares) > BAR
    verdict = "UNDECIDED, a busy machine" if not told else "held" if share <= BAR else "MISSED"
    print(f"{verdict}: adds {share:.1%} (rounds {min(shares):.1%} to {max(shares):.1%}; inside the "
          f"steps {statistics.median(step_shares):.1%}; processor seconds {statistics.median(cpu_shares):.1%}), bar {BAR:.0%}")  # fmt: skip
    return 0 if verdict == "held" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
