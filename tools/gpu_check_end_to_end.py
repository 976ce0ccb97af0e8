"""Section end_to_end: `limbeck train` beside transformers on the same random models and rows: tokens/s, MFU, memory.

In a dry run both train tiny models, ours on the emulated device and theirs on the CPU: losses are compared, host waits and
launches counted, nothing timed.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gpu_check_rows as kept
from gpu_arithmetic import QWEN3_06B, QWEN3_17B, Shape, Step, costs, model_flops
from gpu_check_cards import card_named
from gpu_check_place import Place, importable, last_line
from gpu_check_rows import FAILED, MEASURED, PASSED, SEEN, SKIPPED, Row
from gpu_check_work import train_lines, write_model, write_recipe, write_rows

TOOLS = Path(__file__).resolve().parent
WARM = 4  # steps that are not timed


@dataclass(frozen=True)
class Work:
    name: str
    step: Step
    dtype: str
    steps: int
    spread: float = 0.02  # of the random weights

    # Of the first loss, before any update. Half types round each logit of both sides by its own arithmetic, and a KL is the
    # small difference of large numbers.
    @property
    def tolerance(self) -> float:
        return 1e-4 if self.dtype == "float32" else 0.05


TINY = Work("tiny", Step(Shape(32, 64, 2, 4, 2, 8), Shape(64, 128, 2, 4, 2, 16), 2, 24, 211), "float32", 3, 0.2)
WORKS = (
    Work("0.6B from 1.7B", Step(QWEN3_06B, QWEN3_17B), "bfloat16", 14),
    Work("40M from 100M", Step(Shape(512, 1536, 8, 8, 4, 64), Shape(1024, 3072, 8, 16, 8, 64), 8, 512, 32000), "bfloat16", 30),
)


class MemoryWatch:
    """The most that nvidia-smi said was used while it watched, all processes."""

    def __init__(self, place: Place):
        self.most, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.on = not place.dry

    def watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.ended.wait(0.3):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()
                self.most = max(self.most, int(said[0]))
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                continue

    def __enter__(self):
        if self.on:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        if self.on:
            self.thread.join(15)


class Contest:
    def __init__(self, place: Place, work: Work):
        self.place, self.work, self.folder = place, work, place.scratch / work.name.replace(" ", "_")
        self.folder.mkdir()
        step, draws_on = work.step, "cpu" if place.dry else "cuda"
        for seed, role in enumerate(("teacher", "student")):
            write_model(self.folder / role, getattr(step, role), step.vocabulary, seed=seed, dtype=work.dtype, spread=work.spread, device=draws_on)
        write_rows(self.folder / "data", [step.length] * step.batch * work.steps, step.vocabulary)
        if not place.dry:
            import torch

            torch.cuda.empty_cache()  # the memory is the contenders'

    def recipe(self, name: str, steps: int, graphs: str = "off") -> Path:
        step, work = self.work.step, self.work
        return write_recipe(self.folder / f"{name}.ini", {
            "teacher.model": self.folder / "teacher", "teacher.dtype": work.dtype, "student.model": self.folder / "student",
            "student.dtype": work.dtype, "data.train": self.folder / "data", "data.batch_size": step.batch,
            "data.sequence_length": step.length, "data.packing": "packed", "data.shuffle": "false",
            "objective.divergence": "forward_kl", "objective.temperature": 1.0, "objective.alpha": 1.0,
            "optim.learning_rate": 1e-4, "optim.schedule": "constant", "optim.warmup": "0 steps", "optim.weight_decay": 0.01,
            "optim.clip": 1.0, "train.steps": f"{steps} steps", "train.accumulate": 1, "train.log_every": 1,
            "train.cuda_graphs": graphs,
        })  # fmt: skip

    def limbeck(self, name: str, steps: int, graphs: str = "off", **environment: str) -> dict:
        run, result = self.folder / f"run-{name}", self.folder / f"{name}.json"
        with MemoryWatch(self.place) as watch:
            self.place.limbeck("train", self.recipe(name, steps, graphs), "--run", run, "--json", result, device="cuda",
                               threads=1 if self.place.dry else 8, **environment)  # fmt: skip
        lines = train_lines(run)
        return {"seconds": [line["seconds"] for line in lines], "losses": [line["loss"] for line in lines],
                "peak_bytes": json.loads(result.read_text())["result"]["peak_bytes"], "used_mib": watch.most}  # fmt: skip

    def peer(self, run: int, liger: bool) -> dict:
        job, result = self.folder / "job.json", self.folder / "result.json"
        result.unlink(missing_ok=True)
        job.write_text(json.dumps({
            "teacher": str(self.folder / "teacher"), "student": str(self.folder / "student"), "data": str(self.folder / "data"),
            "dtype": self.work.dtype, "device": "cpu" if self.place.dry else "cuda", "batch": self.work.step.batch,
            "steps": self.work.steps, "threads": 1 if self.place.dry else 8, "learning_rate": 1e-4, "weight_decay": 0.01,
            "run": run, "liger": liger,
        }))  # fmt: skip
        # Its own libraries: ours are not in its way.
        done = self.place.run([sys.executable, TOOLS / "gpu_check_peer_loop.py", job, result], timeout=240, environment=dict(os.environ))
        if done.returncode != 0:
            raise RuntimeError(f"exit {done.returncode}: {last_line(done.stderr or done.stdout)}")
        return json.loads(result.read_text())

    def planned(self) -> int:
        result = self.folder / "check.json"
        self.place.limbeck("check", self.recipe("plan", self.work.steps), "--json", result, device="cuda")
        return json.loads(result.read_text())["result"]["peak_bytes"]


PEERS = (("transformers", 0, False), ("transformers, loss in runs", 1024, False), ("transformers and Liger, loss in runs", 1024, True))


def peers(contest: Contest) -> Iterator[tuple[str, dict | str]]:
    """What each measured, or why it did not."""
    for name, run, liger in PEERS[:1] if contest.place.dry else PEERS:
        missing = [package for package in ["transformers", *(["liger_kernel"] if liger else [])] if not importable(package)]
        contest.place.say(f"{contest.work.name}: {name}")
        try:
            yield name, f"skipped: {missing[0]} not found" if missing else contest.peer(run, liger)
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            yield name, f"failed: {str(error)[:200]}"


def first_loss(contest: Contest, ours: dict, theirs: dict | str) -> Row:
    name = f"{contest.work.name}: first loss as transformers'"
    if isinstance(theirs, str):
        return contest.place.row(name, SKIPPED, theirs)
    a, b = ours["losses"][0], theirs["losses"][0]
    good = abs(a - b) <= contest.work.tolerance * abs(b)
    return contest.place.row(name, PASSED if good else FAILED, f"{a:.6g}, theirs {b:.6g}, allowed {contest.work.tolerance:.0e} of it")


def speed(contest: Contest, ours: dict, found: dict[str, dict | str]) -> Iterator[Row]:
    place, step, name = contest.place, contest.work.step, contest.work.name
    notes = [f"{who} {what}" for who, what in found.items() if isinstance(what, str)]
    if place.dry:
        for what in ("tokens/s", "MFU"):
            yield place.row(f"{name}: {what}", SKIPPED, "; ".join(["dry: a CPU's time says nothing of a GPU's", *notes]), feature=kept.SPEED)
        return
    ran = {"ours": ours, **{who: what for who, what in found.items() if isinstance(what, dict)}}
    medians = {who: statistics.median(what["seconds"][WARM:]) for who, what in ran.items()}
    notes += [f"{who}: {1e3 * seconds:.0f} ms a step, peak {ran[who]['peak_bytes'] / 2**20:,.0f} MiB" for who, seconds in medians.items()]
    card, mine = card_named(place.card), medians.pop("ours")
    floor = sum(cost.floor_ms(card) for cost in costs(step)) / 1e3 if card else None
    yield place.row(f"{name}: tokens/s", MEASURED, "; ".join(notes), feature=kept.SPEED, value=step.tokens / mine, unit="tokens/s",
                    peers={who: step.tokens / seconds for who, seconds in medians.items()}, roofline=floor / mine if floor else None,
                    peak_mib=ours["peak_bytes"] / 2**20)  # fmt: skip
    if card is None:
        yield place.row(f"{name}: MFU", SKIPPED, f"no figures of {place.card} in gpu_check_cards.py", feature=kept.SPEED)
        return
    share = 100 * model_flops(step) / card.half_flops
    yield place.row(f"{name}: MFU", MEASURED, f"{model_flops(step) / 1e12:.3g} TFLOP of products a step, {card.half_flops / 1e12:.0f} TFLOP/s",
                    feature=kept.SPEED, value=share / mine, unit="%", peers={who: share / seconds for who, seconds in medians.items()})  # fmt: skip


def plan(contest: Contest, ours: dict) -> Row:
    place, planned, peak = contest.place, contest.planned(), ours["peak_bytes"]
    note = f"check planned {planned / 2**20:,.1f} MiB, the run's tensors took {peak / 2**20:,.1f} MiB: {planned / peak:.3f} of it"
    name = f"{contest.work.name}: plan against the peak"
    if place.dry:
        return place.row(name, SEEN, f"{note}, on the emulated device", feature=kept.PLAN)
    return place.row(name, MEASURED, f"{note}; nvidia-smi saw at most {ours['used_mib']:,} MiB used, context and cache included",
                     feature=kept.PLAN, value=planned / peak, unit="of the peak", peak_mib=peak / 2**20)  # fmt: skip


def counted(contest: Contest) -> Row:
    """Of one update more: kernels, operators and host waits, which only the emulated device counts."""
    name = f"{contest.work.name}: launches and host waits of an update"
    if not contest.place.dry:
        return contest.place.row(name, SKIPPED, "only the emulated device of --dry-run counts them")
    found, file = [], contest.folder / "counters"
    for steps in (2, 3):
        contest.limbeck(f"counted{steps}", steps, LIMBECK_FAKE_CUDA_COUNTERS=str(file))
        found.append(struct.unpack_from("3q", file.read_bytes()))
    launches, operators, waits = (b - a for a, b in zip(*found))
    note = f"{launches} kernels of ours, {operators} operators of ATen, {waits} host waits, counted on the emulated device"
    return contest.place.row(name, PASSED if launches > 0 else FAILED, note)


def with_graphs(contest: Contest, ours: dict) -> Row:
    place, name = contest.place, f"{contest.work.name}: with CUDA graphs"
    if place.left() < 60 and not place.dry:
        return place.row(name, SKIPPED, f"{place.left():.0f} s are left of this section's time", feature=kept.GRAPHS)
    place.say(name)
    graphs = contest.limbeck("graphs", contest.work.steps, graphs="on")
    if graphs["losses"] != ours["losses"]:
        return place.row(name, FAILED, f"losses {graphs['losses']}, without graphs {ours['losses']}", feature=kept.GRAPHS)
    if place.dry:
        return place.row(name, PASSED, f"the same {len(graphs['losses'])} losses", feature=kept.GRAPHS)
    recorded, plain = (statistics.median(run["seconds"][WARM:]) for run in (graphs, ours))
    return place.row(name, MEASURED, f"the same losses; {1e3 * recorded:.1f} ms a step, without {1e3 * plain:.1f} ms", feature=kept.GRAPHS,
                     value=1e3 * recorded, unit="ms", peers={"without graphs": 1e3 * plain}, peak_mib=graphs["peak_bytes"] / 2**20)  # fmt: skip


def contested(place: Place, work: Work) -> Iterator[Row]:
    place.say(f"{work.name}: models and data")
    contest = Contest(place, work)
    place.say(f"{work.name}: limbeck train")
    began = time.monotonic()
    ours = contest.limbeck("limbeck", work.steps)
    place.say(f"{work.name}: limbeck check")
    took = time.monotonic() - began
    good = len(ours["losses"]) == work.steps and all(loss == loss for loss in ours["losses"])
    yield place.row(f"{work.name}: limbeck train", PASSED if good else FAILED,
                    f"{len(ours['losses'])} of {work.steps} steps, losses {ours['losses'][0]:.6g} to {ours['losses'][-1]:.6g}, {took:.0f} s in all")  # fmt: skip
    yield plan(contest, ours)
    yield counted(contest)
    found = dict(peers(contest))
    yield first_loss(contest, ours, found["transformers"])
    yield from speed(contest, ours, found)
    yield with_graphs(contest, ours)


def rows(place: Place) -> Iterator[Row]:
    for work in (TINY,) if place.dry else WORKS:
        if place.left() < 60 and not place.dry:
            yield place.row(work.name, SKIPPED, f"{place.left():.0f} s are left of this section's time")
            continue
        try:
            yield from contested(place, work)
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
            yield place.row(work.name, FAILED, f"{type(error).__name__}: {str(error)[:300]}")
