"""flash_attention_3 = LIB.so: the unchanged program with a library of FlashAttention 3, whose place a stand-in takes, on the fake
device of tests/fake_cuda/: held against FlashAttention 2's place, the CPU, and itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_cuda_work import FOLDER, Counters, only_where_built
from limbeck_runner import LimbeckError, run_program
from test_fake_cuda import HALF, SAVES, on_device, trained
from training_work import Outcome, Run, Work, checkpoints

pytestmark = only_where_built

LIBRARY, OLDER = FOLDER / "flash_attention_3.so", FOLDER / "older_flash_attention_3.so"
FLAG = f"--flash_attention_3={LIBRARY}"
BFLOAT16 = dict(student__dtype="bfloat16", teacher__dtype="bfloat16")

# Rows that are filled up, and documents end to end: of both each is a sequence of its own.
KINDS = {"float16": dict(student__dtype="float16"), "bfloat16-packed": BFLOAT16 | dict(data__packing="packed")}


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("flash_attention_3"), limbeck)


def with_library(work: Work, name: str, *flags: str, **more) -> Run:
    return trained(work, name, "cuda", FLAG, *flags, **more)


def planned(work: Work, name: str, *flags: str, run: Run) -> int:
    file = work.folder / f"plan-{name}.json"
    on_device("cuda", "check", run.recipe, "--json", file, *flags)
    return json.loads(file.read_text())["result"]["peak_bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_cpus_and_flash_attention_2s(work, kind):
    """Ten steps, with the bits of a second run, also when the last five are run again."""
    keys, file = KINDS[kind], work.folder / f"{kind}.counters"
    cpu = trained(work, f"{kind}-cpu", "cpu", **keys)
    other = trained(work, f"{kind}-2", "cuda", **keys)
    run = with_library(work, kind, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)}, **keys, **SAVES)
    assert len(run.series("loss")) == 10
    assert run.series("loss") == pytest.approx(cpu.series("loss"), rel=HALF)
    assert run.series("loss") == pytest.approx(other.series("loss"), rel=HALF)
    assert run.result["evaluation"]["loss"] == pytest.approx(cpu.result["evaluation"]["loss"], rel=HALF)
    plan, took = planned(work, kind, FLAG, run=run), run.result["peak_bytes"]
    print(f"{kind}: planned {plan}, took {took}: {plan / took:.3f}; with FlashAttention 2 {other.result['peak_bytes']}")
    assert took - 16 * 1024 <= plan <= took
    assert took > other.result["peak_bytes"] + 100_000  # sums of 128 rows for each sequence, which the other's place does not take
    assert Counters.of(file).host_accesses == 0
    outcome = Outcome.of(run.folder)
    again = with_library(work, f"{kind}-again", **keys, **SAVES)
    assert outcome.differences(Outcome.of(again.folder)) == []
    for checkpoint in checkpoints(again.folder)[1:]:
        shutil.rmtree(checkpoint)
    on_device("cuda", "train", run.recipe, FLAG, "--run", again.folder)
    assert outcome.differences(Outcome.of(again.folder)) == []


def test_recorded_as_a_graph_it_has_the_bits_of_one_that_is_not(work):
    """Steps of two shapes that take turns."""
    runs = [with_library(work, f"graphs-{graphs}", "--eval.batches=1", checkpoint__every=10, train__cuda_graphs=graphs,
                         **KINDS["bfloat16-packed"]) for graphs in ("off", "on")]  # fmt: skip
    assert Outcome.of(runs[0].folder).differences(Outcome.of(runs[1].folder)) == []


def test_a_run_remembers_its_attention(work):
    """By what the library is, wherever it lies: by the recipe's key, then from another folder, then without it."""
    recipe, run = work.recipe("remembered", train__steps="4 steps", **BFLOAT16, checkpoint__every=2, checkpoint__keep=2), work.folder / "remembered"
    plain = recipe.read_text()
    recipe.write_text(f"flash_attention_3 = {LIBRARY}\n{plain}")
    on_device("cuda", "train", recipe, "--run", run)
    outcome = Outcome.of(run)
    shutil.rmtree(checkpoints(run)[-1])
    moved = shutil.copy(LIBRARY, work.folder / LIBRARY.name)
    on_device("cuda", "train", recipe, f"--flash_attention_3={moved}", "--run", run)
    assert outcome.differences(Outcome.of(run)) == []
    shutil.rmtree(checkpoints(run)[-1])
    recipe.write_text(plain)
    with pytest.raises(LimbeckError, match="exit 4") as refusal:
        on_device("cuda", "train", recipe, "--run", run)
    assert f"flash_attention_3 was {LIBRARY.name}:" in str(refusal.value)
    assert "is not set" in str(refusal.value) and "--resume.allow=flash_attention_3" in str(refusal.value)


def test_check_says_which_attention_and_needs_no_gpu(work):
    recipe = work.recipe("checked", **BFLOAT16)
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_DEVICES": "0"}
    done = run_program("check", recipe, "--device=cuda", FLAG, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"attention of half types is that of FlashAttention 3: {LIBRARY} (--flash_attention_3)" in done.stdout + done.stderr


REFUSED = {
    "on the CPU": (["--device=cpu", FLAG], {}, "nothing is on a GPU, wanted one of compute capability 9.0 (H100, H200): set device = cuda"),
    "an A100": (["--device=cuda", FLAG], {"LIMBECK_FAKE_CUDA_CAPABILITY": "80"}, "cuda:0 has compute capability 8.0, wanted 9.0"),
    "a B200": (["--device=cuda", FLAG], {"LIMBECK_FAKE_CUDA_CAPABILITY": "100"}, "cuda:0 has compute capability 10.0, wanted 9.0"),
    "another version": (["--device=cuda", f"--flash_attention_3={OLDER}"], {},
                        "registers flash_attn_3::fwd(Tensor q, Tensor k, Tensor v, float? softmax_scale=None, bool is_causal=False)"),
    "another library": (["--device=cuda", f"--flash_attention_3={FOLDER / 'liblimbeck_kernels.so'}"], {},
                        "registers no operator flash_attn_3::fwd: name a library of FlashAttention 3"),
    "no library": (["--device=cuda", f"--flash_attention_3={Path(__file__)}"], {}, "cannot load"),
    "nothing": (["--device=cuda", "--flash_attention_3=nothere.so"], {}, "nothere.so: no such file, wanted a library of FlashAttention 3"),
}  # fmt: skip


@pytest.mark.parametrize("what, command", [(what, "check") for what in REFUSED] + [("on the CPU", "train"), ("an A100", "train")])
def test_what_cannot_serve_is_refused_before_anything_runs(work, what, command):
    flags, more, said = REFUSED[what]
    recipe, run = work.recipe("refused", **BFLOAT16), work.folder / "refused"
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER)} | more
    done = run_program(command, recipe, *flags, *([f"--run={run}"] if command == "train" else []), env=env, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("limbeck: flash_attention_3 (--flash_attention_3): ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not run.exists()
