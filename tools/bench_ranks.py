#!/usr/bin/env python3
"""bench_ranks.py: memory of each rank under ZeRO stages 0 to 3, and how much of the communication is hidden.

A float32 student (12 layers of width 1024: 154 M parameters, 1.85 GB of weights and moments) from random weights
without a teacher, each rank a process of one thread on this machine. A rank's memory is the peak of its anonymous pages
(RssAnon, sampled; code and page cache are not in it) less the same of one rank with a student of almost nothing. VmHWM
less its own, which the kernel keeps and no sampling can miss, is printed beside it. What would take more than --limit
gigabytes in all is left out and said.

  tools/bench_ranks.py                           ranks 1, 2, 4 and parallel.zero 0 to 3; with a checkpoint for some
  tools/bench_ranks.py --only 1:0,4:3 --timeline 4:3=timeline.txt
  tools/bench_ranks.py --only 1:0,4:3,4:3:save   with checkpoint.keep=1 and one save in the middle

Run it by .venv/bin/python. Exit code 1: ZeRO-3 on 4 ranks takes more than 0.35 of one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent / "tests" / "python")]
import bench_data  # noqa: E402
from rank_processes import Ranks  # noqa: E402

BAR = 0.35
SAMPLE_S = 0.005
VOCABULARY, LENGTH, ACCUMULATE = 512, 16, 4


@dataclass(frozen=True)
class Case:
    ranks: int
    zero: int
    saves: bool = False

    @staticmethod
    def parsed(text: str) -> "Case":
        ranks, zero, *rest = text.split(":")
        return Case(int(ranks), int(zero), rest == ["save"])

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' if self.ranks > 1 else ''}, ZeRO-{self.zero}" + (", saves" if self.saves else "")


@dataclass
class Outcome:
    anonymous: list[int] = field(default_factory=list)  # peak of each rank
    resident: list[int] = field(default_factory=list)
    timeline: list[tuple] = field(default_factory=list)
    seconds: float = 0.0
    hidden: float | None = None


def status_of(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmHWM"))}


def config(layers: int, hidden: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "rms_norm_eps": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": False, "use_cache": True, "hidden_size": hidden, "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "rope_theta": 10000.0, "rope_scaling": None, "bos_token_id": None,
        "eos_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        bench_data.write_rows(folder / "data", options.steps * ACCUMULATE, LENGTH, VOCABULARY)
        for name, size in (("student", (options.layers, options.hidden)), ("nothing", (1, 16))):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config(*size)))

    def recipe(self, student: str, case: Case) -> Path:
        path = self.folder / f"recipe{self.count}.ini"
        save = f"keep = 1\nevery = {max(1, self.options.steps // 2)}" if case.saves else "keep = 0"
        path.write_text(f"""\
[student]
model = {self.folder / student}
init = random
dtype = float32
[data]
train = {self.folder / "data"}
batch_size = 1
sequence_length = {LENGTH}
packing = packed
shuffle = false
[objective]
alpha = 0
[optim]
learning_rate = 1e-4
schedule = constant
warmup = 0 steps
[train]
steps = {self.options.steps} steps
accumulate = {ACCUMULATE}
log_every = 1
[parallel]
zero = {case.zero}
[checkpoint]
{save}
""")
        return path

    def run(self, student: str, case: Case) -> Outcome:
        self.count += 1
        run = self.folder / f"run{self.count}"
        ranks = Ranks(case.ranks, self.recipe(student, case), f"--run={run}", program=self.options.limbeck)
        pids = [process.pid for process in ranks.processes]
        outcome = Outcome([0] * case.ranks, [0] * case.ranks)
        begin = time.monotonic()
        while any(process.poll() is None for process in ranks.processes):
            now = [status_of(pid) for pid in pids]
            for rank, status in enumerate(now):
                outcome.anonymous[rank] = max(outcome.anonymous[rank], status.get("RssAnon", 0))
                outcome.resident[rank] = max(outcome.resident[rank], status.get("VmHWM", 0))
            outcome.timeline.append((time.monotonic() - begin, *(s.get("RssAnon", 0) for s in now)))
            time.sleep(SAMPLE_S)
        ranks.end().well()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["phase"] == "train"]
        outcome.seconds = statistics.median(line["seconds"] for line in steps)
        outcome.hidden = steps[-1].get("communication_hidden")
        subprocess.run(["rm", "-rf", str(run)], check=True)
        return outcome


def estimate(case: Case, state: float) -> float:
    """Bytes of all ranks: weights, gradients and two moments, four equal parts of which a stage divides some."""
    divided = {0: 0, 1: 2, 2: 3, 3: 4}[case.zero] if case.ranks > 1 else 0
    saved = 3 / case.ranks if case.saves else 0
    return case.ranks * state * ((4 - divided + saved) + divided / case.ranks + 0.5)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{n}:{z}" for n in (1, 2, 4) for z in range(4)]
    parser.add_argument("--only", default=",".join([*every, "1:0:save", "4:1:save", "4:3:save"]), metavar="RANKS:ZERO[:save],...")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=float, default=10.0, help="gigabytes of all ranks together")
    parser.add_argument("--timeline", default="", metavar="CASE=FILE", help="write the samples of one case")
    parser.add_argument("--limbeck", type=Path, default=TOOLS.parent / "build" / "release" / "bin" / "limbeck")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    hidden = options.hidden
    parameters = options.layers * (4 * hidden**2 + 3 * hidden * (hidden * 11 // 4)) + 2 * VOCABULARY * hidden
    print(f"{options.layers} layers of {hidden}: {parameters / 1e6:.0f} M parameters, weights {parameters * 4 / 1e6:.0f} MB, "
          f"weights and moments {parameters * 12 / 1e6:.0f} MB; {options.steps} updates of {ACCUMULATE} x {LENGTH} tokens")  # fmt: skip
    print(f"{'':<26}{'MB a rank (most)':>18}{'x one rank':>12}{'VmHWM':>9}{'MB, all':>9}{'s a step':>10}{'hidden':>9}")
    found: dict[Case, Outcome] = {}
    of_one, share = 0.0, None
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as folder:
        bench = Bench(options, Path(folder))
        bases: dict[bool, Outcome] = {}
        for case in map(Case.parsed, options.only.split(",")):
            if (wanted := estimate(case, parameters * 4)) > options.limit * 1e9:
                print(f"{str(case):<26}  left out: about {wanted / 1e9:.1f} GB in all, --limit is {options.limit:g}")
                continue
            many = case.ranks > 1
            if many not in bases:
                bases[many] = bench.run("nothing", Case(2 if many else 1, 0))
            base = bases[many]
            outcome = found[case] = bench.run("student", case)
            most = max(outcome.anonymous) - max(base.anonymous)
            kernel = max(outcome.resident) - max(base.resident)
            if case == Case(1, 0):
                of_one = most
            ratio = most / of_one if of_one else float("nan")
            if case == Case(4, 3):
                share = ratio
            hid = "" if outcome.hidden is None else f"{outcome.hidden:.0%}"
            print(f"{str(case):<26}{most / 1e6:>18.0f}{ratio:>12.2f}{kernel / 1e6:>9.0f}"
                  f"{sum(outcome.anonymous) / 1e6:>9.0f}{outcome.seconds:>10.2f}{hid:>9}", flush=True)  # fmt: skip
            name, _, file = options.timeline.partition("=")
            if name and Case.parsed(name) == case:
                Path(file).write_text("".join(" ".join(f"{v:.3f}" if i == 0 else f"{v // 1000000}" for i, v in enumerate(row)) + "\n"
                                              for row in outcome.timeline))  # fmt: skip
        for many, base in bases.items():
            print(f"taken off, {'ranks' if many else 'one rank'} of a student of nothing: RssAnon "
                  f"{max(base.anonymous) / 1e6:.0f} MB, VmHWM {max(base.resident) / 1e6:.0f} MB")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({str(case): vars(outcome) | {"timeline": []} for case, outcome in found.items()}) + "\n")
    if share is None or not of_one:
        return 0
    print(f"{'held' if share <= BAR else 'MISSED'}: ZeRO-3 on 4 ranks {share:.2f} <= {BAR} of one rank")
    return 0 if share <= BAR else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
