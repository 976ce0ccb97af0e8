"""Section correctness: the kernels' tests, five-step trainings on the GPU held against the CPU, bits, compute-sanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import gpu_check_rows as kept
from gpu_arithmetic import Shape
from gpu_check_place import Place, last_line
from gpu_check_rows import FAILED, PASSED, SKIPPED, Row
from gpu_check_work import digests, train_lines, write_model, write_recipe, write_rows

VOCABULARY, LENGTH, BATCH, STEPS = 211, 24, 4, 5
TEACHER, STUDENT = Shape(64, 128, 3, 4, 2, 16), Shape(32, 64, 2, 4, 2, 8)
# Of a loss. Both devices sum in float32 in another order, 1e-7 of a number a step; AdamW's first steps have the length of
# the learning rate whatever the gradient's, so that where a gradient is nearly zero its rounding decides the sign.
FLOAT32 = 2e-5
# The unit of float16 is 1e-3 of a number and bfloat16's 8e-3; a loss is a mean over ninety tokens of such.
HALF = 2e-3

KINDS = {
    "full": (kept.FULL, {}, FLOAT32),
    "packed": (kept.PACKED, {"data.packing": "packed"}, FLOAT32),
    "lora": (kept.LORA, {"adapter.kind": "lora", "adapter.rank": 4, "adapter.dropout": 0.1}, FLOAT32),
    "nf4-lora": (kept.NF4, {"student.quantize": "nf4", "teacher.quantize": "int8", "adapter.kind": "lora", "adapter.rank": 4}, FLOAT32),
    "float16": (kept.FLOAT16, {"student.dtype": "float16"}, HALF),
    "bfloat16": (kept.BFLOAT16, {"student.dtype": "bfloat16", "teacher.dtype": "bfloat16", "data.packing": "packed"}, HALF),
    "experts": (kept.EXPERTS, {"student.model": "experts"}, FLOAT32),
    "experts-bfloat16": (kept.EXPERTS, {"student.model": "experts", "student.dtype": "bfloat16", "teacher.dtype": "bfloat16"}, HALF),
}  # fmt: skip
# Rounding may turn a tie between the last expert that a token goes to and the next; of three, the last weighs little.
EXPERTS_OF = (4, 3)


class Trainings:
    def __init__(self, place: Place):
        self.place, folder = place, place.scratch
        lengths = [6 + 7 * i % (LENGTH - 5) for i in range(120)]
        write_rows(folder / "train", lengths, VOCABULARY)
        write_rows(folder / "validation", lengths[:24], VOCABULARY, seed=1)
        # Weights that have opinions: as models are drawn, every distribution is nearly uniform and the KL nearly zero.
        write_model(folder / "teacher", TEACHER, VOCABULARY, seed=1, spread=0.2)
        write_model(folder / "student", STUDENT, VOCABULARY, seed=2, spread=0.2)
        write_model(folder / "experts", STUDENT, VOCABULARY, seed=3, spread=0.2, experts=EXPERTS_OF)

    def recipe(self, name: str, keys: dict) -> Path:
        folder = self.place.scratch
        keys = {key: folder / value if key == "student.model" else value for key, value in keys.items()}
        return write_recipe(folder / f"{name}.ini", {
            "teacher.model": folder / "teacher", "student.model": folder / "student", "data.train": folder / "train",
            "data.validation": folder / "validation", "data.packing": "padded", "data.batch_size": BATCH,
            "data.sequence_length": LENGTH, "data.shuffle": "no", "objective.alpha": 0.5, "objective.temperature": 2,
            "optim.learning_rate": 1e-3, "optim.weight_decay": 0.01, "train.steps": f"{STEPS} steps", **keys,
        })  # fmt: skip

    def train(self, name: str, device: str, keys: dict, run: Path | None = None, *flags: str, **environment: str) -> Path:
        run = run or self.place.scratch / f"run-{name}-{device}"
        self.place.limbeck("train", self.recipe(name, keys), "--run", run, *flags, device=device, **environment)
        return run

    def losses(self, run: Path) -> list[float]:
        return [line["loss"] for line in train_lines(run)]


def named_library(place: Place) -> dict[str, str]:
    return {"LIMBECK_FLASH_ATTENTION_3": place.flash_attention_3} if place.flash_attention_3 else {}


def kernels_tests(place: Place) -> Row:
    """The same cases as on the CPU with CUDA tensors (cuda_...), and those of CUDA alone; in a dry run a few of the former."""
    name, report = "kernels_test, CUDA cases", place.scratch / "kernels_test.json"
    cases = "*NormTest*cuda_bfloat16*:*QuantizedCudaOf*:FlashAttention3Cuda.Reads*" if place.dry else "*cuda_*:*Cuda*:*Gpu*"
    done = place.run([place.program("kernels_test"), f"--gtest_filter={cases}", f"--gtest_output=json:{report}"], "cuda",
                     timeout=max(20, place.left() * 0.4), LIMBECK_REQUIRE_GPU="1", **named_library(place))  # fmt: skip
    if not report.is_file():
        return place.row(name, FAILED, f"exit {done.returncode} without a report: {last_line(done.stdout + done.stderr)}", feature=kept.OPERATORS)
    found = [case for suite in json.loads(report.read_text())["testsuites"] for case in suite["testsuite"]]
    failed = [f"{case['classname']}.{case['name']}" for case in found if case.get("failures")]
    ran = [case for case in found if case["result"] == "COMPLETED"]
    good = done.returncode == 0 and not failed and ran
    note = f"{len(ran) - len(failed)} of {len(ran)} cases of {cases} passed, {len(found) - len(ran)} skipped by themselves"
    note += f"; exit {done.returncode}; failed: {', '.join(failed[:5])}" if not good else ""
    return place.row(name, PASSED if good else FAILED, note, feature=kept.OPERATORS)


def against_cpu(work: Trainings, kind: str) -> Row:
    feature, keys, tolerance = KINDS[kind]
    cpu, gpu = (work.losses(work.train(kind, device, keys)) for device in ("cpu", "cuda"))
    if len(cpu) != STEPS or len(gpu) != STEPS:
        return work.place.row(kind, FAILED, f"{len(gpu)} losses on the GPU, {len(cpu)} on the CPU, wanted {STEPS}", feature=feature)
    worst = max(abs(a - b) / abs(b) for a, b in zip(gpu, cpu))
    good = worst <= tolerance  # false for a loss that is no number
    note = f"{STEPS} steps, losses {gpu[0]:.6g} to {gpu[-1]:.6g}, at most {worst:.1e} from the CPU's, allowed {tolerance:.0e}"
    return work.place.row(f"{kind} against the CPU", PASSED if good else FAILED, note, feature=feature)


def different(first: Path, second: Path) -> list[str]:
    a, b = digests(first), digests(second)
    found = [name for name in a | b if a.get(name) != b.get(name)]
    pairs = [[line["loss"] for line in train_lines(run)] for run in (first, second)]
    return found + (["losses"] if pairs[0] != pairs[1] else []) + ([] if a else ["no weights were saved"])


def bits(work: Trainings, kind: str) -> Row:
    keys = {**KINDS[kind][1], "checkpoint.every": STEPS}
    runs = [work.train(f"{kind}-{turn}", "cuda", keys) for turn in ("first", "second")]
    found = different(*runs)
    note = f"differ: {', '.join(found[:6])}" if found else f"{len(digests(runs[0]))} files of weights and states, {STEPS} losses"
    return work.place.row(f"{kind}, twice", FAILED if found else PASSED, note, feature=kept.SAME_BITS)


def resumed(work: Trainings, kind: str) -> Row:
    keys = {**KINDS[kind][1], "checkpoint.every": 2, "checkpoint.keep": 9}
    whole = work.train(f"{kind}-whole", "cuda", keys)
    again = whole.with_name(whole.name + "-resumed")
    shutil.copytree(whole, again)
    left_out = [folder for folder in sorted((again / "checkpoints").glob("step-*")) if int(folder.name.removeprefix("step-")) > 2]
    for folder in left_out:
        shutil.rmtree(folder)
    if not left_out:
        return work.place.row(f"{kind}, resumed", FAILED, f"no checkpoint after step 2 in {whole}", feature=kept.RESUME)
    for name in ("final", "best"):
        shutil.rmtree(again / name, ignore_errors=True)
    work.train(f"{kind}-whole", "cuda", keys, run=again)
    found = different(whole, again)
    note = f"differ: {', '.join(found[:6])}" if found else f"from step 2 to {STEPS}: {len(digests(again))} files of weights and states"
    return work.place.row(f"{kind}, resumed", FAILED if found else PASSED, note, feature=kept.RESUME)


def recorded(work: Trainings, kind: str) -> Row:
    """Most of its steps are replays, of two shapes that take turns."""
    place, runs, steps = work.place, {}, (2 if work.place.dry else 4) * STEPS
    for graphs in ("off", "on"):
        keys = {**KINDS[kind][1], "checkpoint.every": steps, "train.steps": f"{steps} steps", "train.cuda_graphs": graphs}
        runs[graphs] = work.train(f"{kind}-graphs-{graphs}", "cuda", keys)
    found = different(*runs.values())
    note = f"differ: {', '.join(found[:6])}" if found else f"the bits of a run without: {len(digests(runs['on']))} files, {steps} losses"
    if not place.dry:
        fastest = {graphs: 1e3 * min(line["seconds"] for line in train_lines(run)) for graphs, run in runs.items()}
        note += f"; a step of the tiny model {fastest['off']:.1f} ms without, {fastest['on']:.1f} ms with"
    return place.row(f"{kind}, recorded as graphs", FAILED if found else PASSED, note, feature=kept.GRAPHS)


def by_flash_attention_3(work: Trainings) -> Row:
    """Rows that are documents end to end, in bfloat16, held against the CPU; twice."""
    place, (_, keys, tolerance) = work.place, KINDS["bfloat16"]
    name = "bfloat16 by FlashAttention 3"
    if not place.flash_attention_3:
        return place.row(name, SKIPPED, "no library: name one by --flash-attention-3 LIB.so", feature=kept.FLASH_3)
    flag = f"--flash_attention_3={place.flash_attention_3}"
    keys = {**keys, "checkpoint.every": STEPS}
    cpu = work.losses(work.train("flash-3", "cpu", keys))
    runs = [work.train(f"flash-3-{turn}", "cuda", keys, None, flag) for turn in ("first", "second")]
    losses, found = work.losses(runs[0]), different(*runs)
    if len(cpu) != STEPS or len(losses) != STEPS:
        return place.row(name, FAILED, f"{len(losses)} losses on the GPU, {len(cpu)} on the CPU, wanted {STEPS}", feature=kept.FLASH_3)
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, cpu))
    note = f"{STEPS} steps, at most {worst:.1e} from the CPU's losses, allowed {tolerance:.0e}; "
    note += f"twice differ: {', '.join(found[:6])}" if found else "twice the same bits"
    return place.row(name, PASSED if worst <= tolerance and not found else FAILED, note, feature=kept.FLASH_3)


def sanitizer(work: Trainings, tool: str) -> Row:
    place, name = work.place, f"compute-sanitizer {tool}"
    program = shutil.which("compute-sanitizer")
    if program is None:
        return place.row(name, SKIPPED, "not found", feature=kept.SANITIZER)
    if place.dry:
        return place.row(name, SKIPPED, "there is no GPU for it in a dry run", feature=kept.SANITIZER)
    if place.left() < 30:
        return place.row(name, SKIPPED, f"{place.left():.0f} s are left of this section's time", feature=kept.SANITIZER)
    recipe = work.recipe("sanitizer", {"train.steps": "1 steps", "eval.batches": 1})
    command = [program, f"--tool={tool}", "--error-exitcode=99", place.program("limbeck"), "train", recipe, "--run",
               place.scratch / f"run-{tool}", "--device=cuda", "--threads=2", "--quiet"]  # fmt: skip
    limit = min(150, place.left() - 5)
    try:
        done = place.run(command, "cuda", timeout=limit)
    except subprocess.TimeoutExpired:
        return place.row(name, SKIPPED, f"not at its end after {limit:.0f} s, so it has shown nothing", feature=kept.SANITIZER)
    said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    if any("Device not supported" in line or "Unable to" in line for line in said) and done.returncode != 99:
        return place.row(name, SKIPPED, last_line("\n".join(said)), feature=kept.SANITIZER)
    return place.row(name, PASSED if done.returncode == 0 else FAILED,
                     f"one step; exit {done.returncode}; {last_line(chr(10).join(said) or done.stderr)}", feature=kept.SANITIZER)  # fmt: skip


def rows(place: Place) -> Iterator[Row]:
    def tried(name: str, feature: str, what, *arguments) -> Row:
        place.say(name)
        began = time.monotonic()
        try:
            row = what(*arguments)
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, subprocess.SubprocessError) as error:
            row = place.row(name, FAILED, f"{type(error).__name__}: {error}", feature=feature)
        row.note += f" ({time.monotonic() - began:.1f} s)"
        return row

    place.say("models and data")
    os.environ.setdefault("OMP_NUM_THREADS", str(place.threads))
    work = Trainings(place)
    for kind in KINDS:
        yield tried(f"{kind} against the CPU", KINDS[kind][0], against_cpu, work, kind)
    for kind in ("full",) if place.dry else ("full", "bfloat16", "nf4-lora", "experts"):
        yield tried(f"{kind}, twice", kept.SAME_BITS, bits, work, kind)
    for kind in ("lora",) if place.dry else ("full", "lora"):
        yield tried(f"{kind}, resumed", kept.RESUME, resumed, work, kind)
    for kind in ("bfloat16",) if place.dry else ("full", "bfloat16", "lora", "nf4-lora", "experts", "experts-bfloat16"):
        yield tried(f"{kind}, recorded as graphs", kept.GRAPHS, recorded, work, kind)
    yield tried("bfloat16 by FlashAttention 3", kept.FLASH_3, by_flash_attention_3, work)
    yield tried("kernels_test, CUDA cases", kept.OPERATORS, kernels_tests, place)
    for tool in ("memcheck", "racecheck"):
        yield tried(f"compute-sanitizer {tool}", kept.SANITIZER, sanitizer, work, tool)
