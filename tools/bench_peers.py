#!/usr/bin/env python3
"""bench_peers.py: one distillation step by Limbeck, by plain PyTorch + transformers, and by TRL's GKD trainer.

The same folders, token rows and dtypes for all; each contender in a process of its own, in turn (A B C A B C ...), so
that a busy machine is busy for all of them. Prints step time, tokens/s, peak memory, time from launch to the end of the
first step, ratios and losses; --json FILE keeps every number.

  tools/bench_peers.py                                     bfloat16, 512x8 to 256x4, 1,024 tokens, V=32,000
  tools/bench_peers.py --dtype float32+float16             a float32 student of a float16 teacher
  tools/bench_peers.py --vocabulary 128000 --only limbeck,plain,chunked
  tools/bench_peers.py --lora 16 --kd-weight 0 --student 512x8     a LoRA step without a teacher, against PEFT
  tools/bench_peers.py --lora 16 --dropout 0.05 ...                and what dropout costs ours and PEFT's

Run it by .venv/bin/python. TRL is no dependency of Limbeck's: uv pip install --python .venv/bin/python trl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))
import bench_data  # noqa: E402

# glibc returns and faults its large blocks again at every step unless told otherwise.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(frozen=True)
class Contender:
    name: str
    what: str
    kind: str
    environment: dict = field(default_factory=dict)
    job: dict = field(default_factory=dict)


WHOLE = {"adapter_dropout": 0.0}

CONTENDERS = [
    Contender("limbeck", "limbeck train", "limbeck"),
    Contender("limbeck-whole", "  without dropout", "limbeck", {}, WHOLE),
    Contender("plain", "PyTorch as users run it", "plain"),
    Contender("plain-whole", "  without dropout", "plain", {}, WHOLE),
    Contender("plain-tuned", "  + allocator tuned", "plain", TUNED),
    Contender("chunked", "  + chunked loss", "chunked"),
    Contender("chunked-tuned", "  + both", "chunked", TUNED),
    Contender("compiled", "  + torch.compile, allocator tuned", "plain", TUNED, {"compile": True}),
    Contender("trl", "TRL GKD, off-policy", "trl"),
    Contender("gemm", "the step's GEMMs alone", "gemm", TUNED),
]
BEST_OF_PYTORCH = ("plain", "plain-tuned", "chunked", "chunked-tuned", "compiled")


@dataclass
class Outcome:
    seconds: list[float] = field(default_factory=list)  # of the steps after the warm-up, all rounds
    first_step: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    error: str = ""

    def median(self) -> float:
        return statistics.median(self.seconds)


def run_measured(command: list[str], environment: dict, log: Path) -> tuple[int, int]:
    """Exit code and peak resident bytes of one process."""
    with open(log, "wb") as out:
        child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    return child.returncode, usage.ru_maxrss * 1024


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        student, _, teacher = options.dtype.partition("+")
        self.job = {
            "teacher": str(folder / "teacher"), "student": str(folder / "student"), "data": str(folder / "data"),
            "teacher_dtype": teacher or student, "student_dtype": student, "batch": options.batch,
            "length": options.length, "steps": options.steps, "threads": options.threads,
            "vocabulary": options.vocabulary, "teacher_size": options.teacher, "student_size": options.student,
            "kd_weight": options.kd_weight, "temperature": 1.0, "learning_rate": 1e-4, "weight_decay": 0.01,
            "scratch": str(folder / "scratch"), "adapter_rank": options.lora,
            "adapter_dropout": options.dropout,
        }  # fmt: skip
        self.environment = {
            "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip

    def prepare(self) -> None:
        self.worker("models", {}, {})
        self.write_rows()

    def write_rows(self) -> None:
        o = self.options
        bench_data.write_rows(self.folder / "data", o.batch * o.steps, o.length, o.vocabulary)

    def worker(self, kind: str, environment: dict, more: dict) -> tuple[dict, int, float]:
        """What a loop of bench_peers_loops.py measured, its peak memory, and when it was launched."""
        self.count += 1
        job, result = self.folder / f"job{self.count}.json", self.folder / f"result{self.count}.json"
        log = self.folder / f"log{self.count}.txt"
        job.write_text(json.dumps({**self.job, **more}))
        command = [sys.executable, str(TOOLS / "bench_peers_loops.py"), kind, str(job), str(result)]
        launched = time.time()
        code, peak = run_measured(command, {**self.environment, **environment}, log)
        if code != 0:
            raise RuntimeError(f"exit {code}: {last_line(log)}")
        return json.loads(result.read_text()), peak, launched

    def limbeck(self, more: dict) -> tuple[dict, int, float]:
        self.count += 1
        run, log = self.folder / f"run{self.count}", self.folder / f"log{self.count}.txt"
        recipe = self.folder / "recipe.ini"
        recipe.write_text(bench_data.recipe_text({**self.job, **more}))
        command = [str(self.options.limbeck), "train", str(recipe), f"--run={run}", f"--threads={self.options.threads}"]
        launched = time.time()
        code, peak = run_measured(command, self.environment, log)
        if code != 0:
            raise RuntimeError(f"exit {code}: {last_line(log)}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["phase"] == "train"]
        first = bench_data.step_times(run)[0]
        return (
            {
                "seconds": [line["seconds"] for line in steps],
                "losses": [line["loss"] for line in steps],
                "first_step_at": first,
            },
            peak,
            launched,
        )

    def measure(self, contender: Contender, outcome: Outcome) -> None:
        try:
            if contender.kind == "limbeck":
                result, peak, launched = self.limbeck(contender.job)
            else:
                result, peak, launched = self.worker(contender.kind, contender.environment, contender.job)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            outcome.error = outcome.error or str(error)
            return
        outcome.seconds += result["seconds"][self.options.warmup :]
        outcome.first_step.append(result["first_step_at"] - launched)
        outcome.peak_bytes.append(peak)
        outcome.losses.append(result["losses"])


def table(outcomes: dict[str, Outcome], tokens: int) -> str:
    ours = outcomes.get("limbeck")
    ours = ours if ours is not None and ours.seconds else None
    heads = ["", "step ms", "tokens/s", "peak MB", "first step s", "time ÷ ours", "memory ÷ ours"]
    lines = [f"{heads[0]:<36}" + "".join(f"{head:>15}" for head in heads[1:])]
    for contender in CONTENDERS:
        outcome = outcomes.get(contender.name)
        if outcome is None:
            continue
        if not outcome.seconds:
            lines.append(f"{contender.what:<36}  failed: {outcome.error}")
            continue
        peak, is_bound = max(outcome.peak_bytes), contender.kind == "gemm"
        cells = [f"{1e3 * outcome.median():.0f}", f"{tokens / outcome.median():,.0f}"]
        cells += ["–", "–"] if is_bound else [f"{peak / 1e6:,.0f}", f"{statistics.median(outcome.first_step):.2f}"]
        cells.append(f"{outcome.median() / ours.median():.2f}" if ours else "–")
        cells.append(f"{peak / max(ours.peak_bytes):.2f}" if ours and not is_bound else "–")
        lines.append(f"{contender.what:<36}" + "".join(f"{cell:>15}" for cell in cells))
        if outcome.error:
            lines.append(f"{'':<36}  one round failed: {outcome.error}")
    return "\n".join(lines)


def ratios(outcomes: dict[str, Outcome]) -> dict[str, float]:
    """What the bars are about: how many times faster, smaller or earlier Limbeck is, and how far from the bound."""
    done = {name: outcome for name, outcome in outcomes.items() if outcome.seconds}
    ours, found = done.get("limbeck"), {}
    if ours is None:
        return found
    for name in ("plain", "trl"):
        if name in done:
            found[f"speed over {name}"] = done[name].median() / ours.median()
    for name in ("limbeck", "plain"):
        if f"{name}-whole" in done and name in done:
            found[f"step of {name} with dropout over without"] = done[name].median() / done[f"{name}-whole"].median()
    best = min((done[n] for n in BEST_OF_PYTORCH if n in done), key=Outcome.median, default=None)
    if best:
        found["speed over the best PyTorch variant"] = best.median() / ours.median()
    for name in ("plain", "chunked"):
        if name in done:
            found[f"memory of {name}, ours as a share"] = max(ours.peak_bytes) / max(done[name].peak_bytes)
    if "trl" in done:
        first = statistics.median(done["trl"].first_step)
        found["first step of trl, ours as a share"] = statistics.median(ours.first_step) / first
    if "gemm" in done:
        found["times the GEMM-only bound"] = ours.median() / done["gemm"].median()
    return found


def losses_table(outcomes: dict[str, Outcome]) -> str:
    seen = {name: outcome.losses[0] for name, outcome in outcomes.items() if outcome.losses and outcome.losses[0]}
    lines = [f"{'loss of step':<14}" + "".join(f"{name:>15}" for name in seen)]
    count = min((len(losses) for losses in seen.values()), default=0)
    for step in range(count):
        if step < 4 or step == count - 1:
            lines.append(f"{step + 1:<14}" + "".join(f"{losses[step]:>15.6f}" for losses in seen.values()))
    return "\n".join(lines)


def machine() -> dict:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    load = os.getloadavg()[0]
    return {"cpu": model, "cores": os.cpu_count(), "load_at_start": load, "python": platform.python_version()}


def size(text: str) -> list[int]:
    width, _, layers = text.partition("x")
    return [int(width), int(layers)]


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(c.name for c in CONTENDERS)
    parser.add_argument("--only", default=names, help=f"of {names}")
    parser.add_argument("--dtype", default="bfloat16", help="of both, or STUDENT+TEACHER: float32+float16")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--teacher", type=size, default=[512, 8], metavar="WIDTHxLAYERS")
    parser.add_argument("--student", type=size, default=[256, 4], metavar="WIDTHxLAYERS")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--kd-weight", type=float, default=1.0, help="the rest is cross-entropy; TRL knows only 1")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train LoRA on the student; Python's by PEFT")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="RATE", help="of LoRA; then also without, for its cost")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limbeck", type=Path, default=TOOLS.parent / "build" / "release" / "bin" / "limbeck")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - {c.name for c in CONTENDERS}:
        parser.error(f"--only {','.join(sorted(unknown))}: wanted some of {names}")
    if options.dropout and not (options.lora and 0 < options.dropout < 1):
        parser.error(f"--dropout {options.dropout}: wanted between 0 and 1, with --lora")
    if not 0 <= options.warmup < options.steps:
        parser.error(f"--warmup {options.warmup} of --steps {options.steps}: at least one step must be left")
    alone = options.kd_weight < 1 or options.lora > 0
    if alone and "trl" in options.only:
        if options.only != names.split(","):
            parser.error("--kd-weight below 1 and --lora: TRL's loss has no cross-entropy, its student no adapter here; "
                         "leave trl out of --only")  # fmt: skip
        options.only.remove("trl")
    if not options.dropout:
        options.only = [name for name in options.only if not name.endswith("-whole")]
    return options


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    contenders = [c for c in CONTENDERS if c.name in options.only]
    outcomes = {c.name: Outcome() for c in contenders}
    about = machine()
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        bench = Bench(options, Path(folder))
        bench.prepare()
        for turn in range(options.rounds):
            for contender in contenders:
                print(f"round {turn + 1} of {options.rounds}: {contender.name}", file=sys.stderr, flush=True)
                bench.measure(contender, outcomes[contender.name])
    found = ratios(outcomes)
    sizes = "teacher {}x{}, student {}x{}".format(*options.teacher, *options.student)
    if options.kd_weight == 0:
        sizes = sizes.partition(", ")[2] + ", no teacher"
    sizes += f", LoRA of rank {options.lora} (Python: PEFT)" if options.lora else ""
    sizes += f", dropout {options.dropout}" if options.dropout else ""
    print(f"{sizes}, V={options.vocabulary}, {options.batch}x{options.length} tokens, {options.dtype}, "
          f"{options.threads} threads, {about['cpu']}")  # fmt: skip
    print(table(outcomes, options.batch * options.length))
    print("\n".join(f"{what}: {value:.2f}" for what, value in found.items()))
    print(losses_table(outcomes))
    if options.json:
        setting = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        everything = {"machine": about, "options": setting, "ratios": found,
                      "contenders": {name: vars(outcome) for name, outcome in outcomes.items()}}  # fmt: skip
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 0 if all(outcome.seconds for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
