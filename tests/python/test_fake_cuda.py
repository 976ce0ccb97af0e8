"""The unchanged program with --device=cuda, on the fake device of tests/fake_cuda/, held against itself on the CPU.

A host that touches the device's memory ends the process there, a tensor left on the CPU is refused, and so on: that a run
ends well says all that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import model_zoo
import pytest
import torch
from fake_cuda_work import FLOAT32, FOLDER, Counters, only_where_built, resnet_bk_student, student_of_experts
from limbeck_runner import LimbeckError, run_program
from safetensors.torch import load_file, save_file
from training_work import Outcome, Run, Work, checkpoints

pytestmark = only_where_built

HALF = 2e-4  # the attention of the device rounds once where the CPU's does twice; a step of bfloat16 is 4e-3 of a number


def on_device(device: str, *arguments, **environment) -> str:
    """What the program prints."""
    env = dict(os.environ) | environment
    if device == "cuda":
        env["LD_LIBRARY_PATH"] = str(FOLDER)
    done = run_program(*arguments, "--device", device, "--threads", 1, "--quiet", env=env, timeout=300)
    if done.returncode != 0:
        raise LimbeckError(f"exit {done.returncode} on {device}: {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")
    return done.stdout


def assert_close(cpu: dict, cuda: dict, tolerance: float) -> None:
    assert cpu.keys() == cuda.keys()
    for name, wanted in cpu.items():
        scale = max(1.0, wanted.double().abs().max().item()) if wanted.numel() else 1.0
        worst = (wanted.double() - cuda[name].double()).abs().max().item() if wanted.numel() else 0.0
        assert worst <= tolerance * scale, f"{name}: {worst} of {scale}"


# Grouped queries; softcaps and windows; experts beside dense layers; learned positions and biases; an encoder; no
# attention, causal and of both sides.
@pytest.mark.parametrize("name", ["llama3", "gemma2", "qwen3-moe-mixed", "gpt2", "bert", "resnet-bk", "resnet-bk-masked"])
def test_forward_and_every_gradient_are_the_cpus(tmp_path, name):
    family = next(family for family in model_zoo.FAMILIES if family.name == name)
    folder = model_zoo.write_model(family, tmp_path / "model")
    length = 70 if "resnet-bk" in name else 20  # more than a segment of the resolvent
    inputs = model_zoo.make_inputs(family, batch=2, length=length)
    given = dict(inputs.tensors)
    if family in model_zoo.DECODERS:
        given["labels"] = model_zoo.make_labels(family, inputs)
    else:
        given["output_gradient"] = model_zoo.make_cotangent(inputs, (2, length, model_zoo.VOCABULARY if family.kind == "masked" else 64))
    save_file({key: value.contiguous() for key, value in given.items()}, tmp_path / "in.safetensors")
    results = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.safetensors"
        on_device(device, "forward", "--model", folder, "--dtype=float32", "--input", tmp_path / "in.safetensors",
                  "--output", out, "--hidden", "--gradients")  # fmt: skip
        results.append(load_file(out))
    assert_close(*results, 1e-5)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("fake_cuda"), limbeck)


@pytest.fixture(scope="module")
def experts(work) -> Path:
    return student_of_experts(work)


def trained(work: Work, name: str, device: str, *flags: str, steps: int = 10, environment=None, **keys) -> Run:
    recipe = work.recipe(name, train__steps=f"{steps} steps", **keys)
    run, result = work.folder / f"run-{name}-{device}", work.folder / f"{name}-{device}.json"
    on_device(device, "train", recipe, "--run", run, "--json", result, *flags, **(environment or {}))
    return Run(run, result, recipe)


def plan_of(work: Work, name: str, run: Run) -> int:
    """What check says that tensors will take on the device."""
    file = work.folder / f"plan-{name}.json"
    on_device("cuda", "check", run.recipe, "--json", file)
    return json.loads(file.read_text())["result"]["peak_bytes"]


KINDS = {
    "full": ({}, FLOAT32),
    "packed": (dict(data__packing="packed", data__shuffle="yes"), FLOAT32),
    "lora": (dict(adapter__kind="lora", adapter__rank=4, adapter__dropout=0.1), FLOAT32),
    "nf4-lora": (dict(student__quantize="nf4", teacher__quantize="int8", adapter__kind="lora", adapter__rank=4), FLOAT32),
    "npt": (dict(adapter__kind="npt", adapter__rank=4), FLOAT32),
    "bfloat16": (dict(student__dtype="bfloat16", teacher__dtype="bfloat16", optim__clip=1.0), HALF),
    "bfloat16-packed": (dict(student__dtype="bfloat16", teacher__dtype="bfloat16", data__packing="packed"), HALF),
    "float16": (dict(student__dtype="float16"), HALF),  # with a loss scale
}


def resumed(work: Work, run: Run, step: int) -> Path:
    """The run once more from its checkpoint of a step on."""
    folder = work.folder / f"{run.folder.name}-resumed"
    shutil.copytree(run.folder, folder)
    for checkpoint in checkpoints(folder):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    on_device("cuda", "train", run.recipe, "--run", folder)
    return folder


# What a checkpoint and a resume do is none of the CPU's business.
SAVES = dict(checkpoint__every=5, checkpoint__keep=2)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_cpus(work, kind):
    """Ten steps, also when the last five are run again from the checkpoint before them."""
    keys, tolerance = KINDS[kind]
    file = work.folder / f"{kind}.counters"
    cpu = trained(work, kind, "cpu", **keys)
    cuda = trained(work, kind, "cuda", **keys, **SAVES, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)})
    assert len(cuda.series("loss")) == 10
    assert cuda.series("loss") == pytest.approx(cpu.series("loss"), rel=tolerance)
    assert cuda.result["evaluation"]["loss"] == pytest.approx(cpu.result["evaluation"]["loss"], rel=tolerance)
    # The plan is of the device's own bodies; what it leaves out is the batch and what was counted in it.
    planned, took = plan_of(work, kind, cuda), cuda.result["peak_bytes"]
    counted = Counters.of(file)
    print(f"{kind}: planned {planned}, took {took}: {planned / took:.3f}; {counted.launches} kernels, {counted.operators} operators, "
          f"{counted.host_accesses} host accesses outside of operators")  # fmt: skip
    assert took - 16 * 1024 <= planned <= took
    assert counted.host_accesses == 0
    assert Outcome.of(cuda.folder).differences(Outcome.of(resumed(work, cuda, step=5))) == []


def test_an_access_of_the_host_ends_the_process_and_is_counted(tmp_path):
    driver, file = FOLDER.parent / "bin" / "test_driver", tmp_path / "counters"
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_COUNTERS": str(file)}
    done = subprocess.run([driver, "touch"], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == -signal.SIGABRT and "read" not in done.stdout
    assert "the host reads or writes byte 0 of a block of 12 on the device" in done.stderr
    assert Counters.of(file).host_accesses == 1


def update_counts(work: Work, name: str, **keys) -> Counters:
    """Of one update more."""
    counted = []
    for steps in (2, 3):
        file = work.folder / "counters"
        trained(work, f"{name}{steps}", "cuda", "--eval.batches=1", steps=steps, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)},
                **keys)  # fmt: skip
        counted.append(Counters.of(file))
        assert counted[-1].bytes == 0 and counted[-1].peak_bytes > 0
    return Counters(*(b - a for a, b in zip(*counted)))


EXPERTS = {
    "float32": (dict(student__dtype="float32", teacher__dtype="float32"), FLOAT32),
    "bfloat16": (dict(student__dtype="bfloat16", teacher__dtype="bfloat16"), HALF),
    "float16": (dict(student__dtype="float16"), HALF),
    "lora": (dict(adapter__kind="lora", adapter__rank=4, adapter__target=r"experts\..*_proj|q_proj"), FLOAT32),
    "packed-lora": (dict(student__quantize="int4", adapter__kind="lora", adapter__rank=4, adapter__target=r"experts\..*_proj|q_proj"), FLOAT32),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_training_of_experts_is_the_cpus(work, experts, kind):
    """No sum of it is left to who comes first, though the tokens of an expert come from everywhere, and the host does not wait
    to learn how many tokens each has."""
    name = f"experts-{kind}"
    keys, tolerance = dict(student__model=experts) | EXPERTS[kind][0], EXPERTS[kind][1]
    assert_training_is_the_cpus(work, name, keys, tolerance)


RESNET_BK = {
    "float32": (dict(student__dtype="float32", teacher__dtype="float32"), FLOAT32),
    "packed": (dict(data__packing="packed", data__sequence_length=40), FLOAT32),  # segments and documents in a row
    "bfloat16": (dict(student__dtype="bfloat16", teacher__dtype="bfloat16"), HALF),
    "int8": (dict(student__bk_activations="int8"), FLOAT32),  # v and G as codes
}


@pytest.mark.parametrize("kind", RESNET_BK)
def test_training_of_a_resnet_bk_is_the_cpus(work, kind):
    """Also in memory: the plan has the resolvent's scratch."""
    keys, tolerance = RESNET_BK[kind]
    student = resnet_bk_student(work, "ResNetBKForCausalLM")
    assert_training_is_the_cpus(work, f"resnet-bk-{kind}", dict(student__model=student) | keys, tolerance)


def assert_training_is_the_cpus(work: Work, name: str, keys: dict, tolerance: float) -> None:
    file = work.folder / f"{name}.counters"
    cpu = trained(work, name, "cpu", **keys)
    cuda = trained(work, name, "cuda", **keys, **SAVES, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)})
    assert len(cuda.series("loss")) == 10
    assert cuda.series("loss") == pytest.approx(cpu.series("loss"), rel=tolerance)
    assert Counters.of(file).unordered == 0 and Counters.of(file).host_accesses == 0
    planned, took = plan_of(work, name, cuda), cuda.result["peak_bytes"]
    print(f"{name}: planned {planned}, took {took}: {planned / took:.3f}")
    assert took - 16 * 1024 <= planned <= took
    assert Outcome.of(cuda.folder).differences(Outcome.of(resumed(work, cuda, step=5))) == []
    waits = update_counts(work, name, **keys).waits
    print(f"{name}: {waits} host waits of an update")
    assert waits == 1


def test_the_order_of_threads_and_blocks_changes_no_bit(work, experts):
    """No kernel of a step leaves anything to who comes first; a student of experts has those of a dense one and its own."""
    runs = [trained(work, f"order{seed}", "cuda", steps=3, checkpoint__every=3, student__model=experts,
                    environment={"LIMBECK_FAKE_CUDA_SEED": seed}) for seed in ("0", "1", "2")]  # fmt: skip
    first, *others = [Outcome.of(run.folder) for run in runs]
    assert [first.differences(other) for other in others] == [[], []]


def test_a_step_counts_what_it_does(work):
    """Kernels, operators and host waits of one update more; nothing stays on the device at the end."""
    step = update_counts(work, "counted")
    print(f"one update: {step.launches} kernels of ours, {step.operators} operators of ATen, {step.waits} host waits")
    # One for gradients and losses; none a parameter, and none for which tokens count.
    assert step.operators > 0 and step.waits == 1
    # AdamW and the sums of squares are launches of lists (a parameter each: 90), queries and keys turn in one.
    assert 0 < step.launches <= 46 and step.unordered == 0


def test_the_peak_is_of_the_device(work):
    file = work.folder / "counters"
    run = trained(work, "peak", "cuda", steps=2, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)})
    whole = Counters.of(file).peak_bytes  # of the process, its evaluation included
    parameters = [sum(p.numel() for p in model.parameters()) for model in (work.teacher, work.student)]
    held = 4 * (parameters[0] + 4 * parameters[1])  # a student's weight, gradient and two moments
    assert held < run.result["peak_bytes"] <= whole
    assert held < min(run.series("peak_bytes"))


def test_evaluation_is_the_cpus(work):
    results = []
    for device in ("cpu", "cuda"):
        file = work.folder / f"eval-{device}.json"
        on_device(device, "eval", work.recipe("eval"), "--json", file)
        results.append(json.loads(file.read_text())["result"])
    cpu, cuda = results
    for name in ("loss", "kd", "ce", "kl", "perplexity", "top1_agreement", "targets"):
        assert cuda[name] == pytest.approx(cpu[name], rel=FLOAT32), name


@pytest.mark.parametrize("flags", [(), ("--temperature=0.8", "--top-k=20", "--top-p=0.9", "--seed=3")], ids=["greedy", "sampled"])
@pytest.mark.parametrize("model", ["llama", "resnet-bk"])
def test_generated_tokens_are_the_cpus(work, model, flags):
    folder = work.folder / "teacher" if model == "llama" else resnet_bk_student(work, "ResNetBKForCausalLM")
    outputs = []
    for device in ("cpu", "cuda"):
        out = work.folder / f"tokens-{device}.safetensors"
        on_device(device, "generate", "--model", folder, "--prompt-ids", "5,17,99", "--max-new-tokens", 24,
                  "--output", out, *flags)  # fmt: skip
        outputs.append(load_file(out)["tokens"])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("flags", [(), ("--temperature=0.8", "--top-k=20", "--top-p=0.9")], ids=["greedy", "sampled"])
def test_a_token_waits_once(work, flags):
    """The ids come back, and with them whether logits were broken; the logits stay where they are."""
    counted = []
    for tokens in (8, 16):
        file = work.folder / "counters"
        on_device("cuda", "generate", "--model", work.folder / "teacher", "--prompt-ids", "5,17,99", "--max-new-tokens", tokens,
                  *flags, LIMBECK_FAKE_CUDA_COUNTERS=str(file))  # fmt: skip
        counted.append(Counters.of(file))
    more = Counters(*(b - a for a, b in zip(*counted)))
    print(f"eight tokens: {more.launches} kernels of ours, {more.operators} operators of ATen, {more.waits} host waits")
    assert more.waits == 8


def test_a_merged_adapter_is_the_cpus(work):
    adapter = trained(work, "to-merge", "cpu", steps=3, adapter__kind="lora", adapter__rank=4).folder / "final"
    merged = []
    for device in ("cpu", "cuda"):
        out = work.folder / f"merged-{device}"
        on_device(device, "merge", "--model", work.folder / "student", "--adapter", adapter, "--output", out)
        merged.append(load_file(out / "model.safetensors"))
    assert_close(*merged, 1e-6)
