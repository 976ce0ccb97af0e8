"""profile_stopwatch.py FOLDER: `limbeck profile`'s latency and memory against an independent stopwatch and the kernel's own account.

FOLDER holds a model's config.json. Weights are random on both sides: only shapes count. In each round, one after the other:

- `limbeck profile` of one precision, twice, with few measured passes and with many. Its own mean of the passes that the
  longer run did more is held against the wall clock of this script: the seconds that it took more, over those passes;
- the kernel's VmHWM of the process that did the work, read from outside while it runs, against peak_rss_bytes;
- as a peer, transformers' forward of the same shape by torch, in a process that was loaded before.

This process has no torch: what it starts would inherit its memory in the system's account.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FEW = 10  # measured passes of the shorter run: as many as are observed module by module, so that both do that alike
REPOSITORY = Path(__file__).resolve().parents[2]


def peer(folder: str, dtype: str, batch: int, length: int) -> None:
    """Answers each number on standard input with the milliseconds of a forward, the mean of as many."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    decodes = not (config.model_type in ("bert", "distilbert") or getattr(config, "is_encoder_decoder", False))
    kind = transformers.AutoModelForCausalLM if decodes else transformers.AutoModel
    torch.manual_seed(0)
    model = kind.from_config(config).eval().to(getattr(torch, dtype))
    ids = torch.randint(0, config.vocab_size, (batch, length))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        for _ in range(3):
            model(input_ids=ids, attention_mask=mask)
        print("ready", torch.__version__, flush=True)
        for line in sys.stdin:
            begin = time.perf_counter()
            for _ in range(int(line)):
                model(input_ids=ids, attention_mask=mask)
            print(1000 * (time.perf_counter() - begin) / int(line), flush=True)


class Peer:
    def __init__(self, arguments, dtype: str):
        command = [sys.executable, __file__, str(arguments.folder), "--peer", dtype, f"--batch={arguments.batch}",
                   f"--length={arguments.length}"]  # fmt: skip
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.greeting = self.process.stdout.readline().strip()

    def milliseconds(self, passes: int) -> float:
        self.process.stdin.write(f"{passes}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def peaks_of_children(parent: subprocess.Popen, peaks: dict[int, int]) -> None:
    """VmHWM in bytes of each child that `parent` ever has, in the order of their coming."""
    while parent.poll() is None:
        try:
            for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
                for line in Path(f"/proc/{child}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks[int(child)] = int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.002)


def profiled(arguments, recipe: Path, dtype: str, passes: int) -> tuple[dict, float, int]:
    """The row, the seconds of the whole program, and the peak of the process that measured it."""
    result = recipe.with_suffix(".json")
    command = [arguments.limbeck, "profile", recipe, f"--precisions={dtype}", "--work=forward", "--devices=cpu",
               f"--profile.batch={arguments.batch}", f"--profile.length={arguments.length}", "--profile.warmup=3",
               f"--profile.measured={passes}", "--profile.trials=1", "--profile.most_seconds=0", "--profile.energy=off",
               f"--threads={arguments.threads}", "--quiet", "--json", result]  # fmt: skip
    peaks: dict[int, int] = {}
    begin = time.perf_counter()
    program = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    watcher = threading.Thread(target=peaks_of_children, args=(program, peaks))
    watcher.start()
    if program.wait() != 0:
        sys.exit(f"limbeck profile ended with code {program.returncode}")
    seconds = time.perf_counter() - begin
    watcher.join()
    row = json.loads(result.read_text())["result"]["rows"][0]
    if row["refused"]:
        sys.exit(row["refused"])
    # Of the machine's ceilings, then of the work, then of what is assessed beside it.
    return row, seconds, list(peaks.values())[1]


def compare(arguments, recipe: Path, dtype: str) -> dict:
    other = Peer(arguments, dtype) if arguments.torch else None
    own, outside, resident, torch_ms = [], [], [], []
    for _ in range(arguments.rounds):
        short, short_s, _ = profiled(arguments, recipe, dtype, FEW)
        if other:
            torch_ms.append(other.milliseconds(arguments.passes))
        long, long_s, peak = profiled(arguments, recipe, dtype, FEW + arguments.passes)
        more = long["latency_ms"]["mean"] * (FEW + arguments.passes) - short["latency_ms"]["mean"] * FEW
        own.append(more / arguments.passes)
        outside.append(1000 * (long_s - short_s) / arguments.passes)
        resident.append(long["peak_rss_bytes"] / peak)
        print(f"  {dtype}: {own[-1]:.2f} ms, stopwatch {outside[-1]:.2f} ms, resident {resident[-1]:.3f}"
              + (f", torch {torch_ms[-1]:.2f} ms" if torch_ms else ""), flush=True)  # fmt: skip
    if other:
        other.close()
    found = {
        "dtype": dtype,
        "own_ms": statistics.median(own),
        "stopwatch_ms": statistics.median(outside),
        "resident_over_kernels": statistics.median(resident),
        "torch_ms": statistics.median(torch_ms) if torch_ms else None,
    }
    found["own_over_stopwatch"] = statistics.median(a / b for a, b in zip(own, outside))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limbeck", default=str(REPOSITORY / "build" / "release" / "bin" / "limbeck"))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--torch", action="store_true", help="time transformers' forward too")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(str(arguments.folder), arguments.peer, arguments.batch, arguments.length)
        return 0
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "profile.ini"
        recipe.write_text(f"[student]\nmodel = {arguments.folder.resolve()}\ninit = random\n[teacher]\nkind = none\n")
        for dtype in arguments.dtypes.split(","):
            found = compare(arguments, recipe, dtype)
            torch_text = f", torch {found['torch_ms']:.2f} ms" if found["torch_ms"] else ""
            print(f"{dtype}: profile {found['own_ms']:.2f} ms, stopwatch {found['stopwatch_ms']:.2f} ms "
                  f"({found['own_over_stopwatch']:.3f}), resident {found['resident_over_kernels']:.3f} of the kernel's{torch_text}",
                  flush=True)  # fmt: skip
            bad += abs(found["own_over_stopwatch"] - 1) > 0.10 or abs(found["resident_over_kernels"] - 1) > 0.05
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
