"""What a run takes of a device's memory, and of the host's for it, on the fake device of tests/fake_cuda/."""

from __future__ import annotations

import os

import pytest
from limbeck_runner import run_program
from test_fake_cuda import FOLDER, Counters, plan_of, trained, update_counts
from training_work import Work, checkpoints, joined_state, llama, saved

pytestmark = pytest.mark.skipif(not (FOLDER / "liblimbeck_cuda.so").exists(), reason="built without the fake CUDA device")

PAGE = 4096


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    work = Work(tmp_path_factory.mktemp("device_memory"), limbeck)
    # Unpacking a matrix of the wide one takes more than all activations.
    saved(llama(256, 2, seed=3), work.folder / "wide")
    return work


def test_saves_lock_the_bytes_of_the_plan_and_unlock_them(work):
    file = work.folder / "counters"
    run = trained(work, "locked", "cuda", steps=3, checkpoint__every=1, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)})
    counted, bytes_of_a_copy = Counters.of(file), run.result["planned_checkpoint_copy_bytes"]
    print(f"a copy of {bytes_of_a_copy} bytes: {counted.most_registered_bytes} locked")
    assert counted.most_registered_bytes == -(-bytes_of_a_copy // PAGE) * PAGE
    assert counted.registered_bytes == 0


def test_a_save_waits_once_for_its_copy(work):
    """And once more to learn whether all weights are finite."""
    without, saving = (update_counts(work, f"saves-{every}", checkpoint__every=every) for every in (100, 1))
    assert saving.waits - without.waits == 2


def test_saves_while_training_goes_on_hold_their_steps(work):
    """Those of a run that stands still at each save."""
    keys = dict(checkpoint__every=1, checkpoint__keep=6)
    beside, standing = (trained(work, f"beside-{beside}", "cuda", steps=6, checkpoint__async=beside, **keys) for beside in ("yes", "no"))
    assert len(checkpoints(beside.folder)) == len(checkpoints(standing.folder)) == 6
    for one, other in zip(checkpoints(beside.folder), checkpoints(standing.folder)):
        states = joined_state(one), joined_state(other)
        assert states[0].keys() == states[1].keys() and all(states[0][name].equal(states[1][name]) for name in states[0]), one


def test_where_nothing_can_be_locked_a_run_says_so_once_and_saves(work):
    recipe, run = work.recipe("unlocked", train__steps="3 steps", checkpoint__every=1, checkpoint__keep=3), work.folder / "run-unlocked"
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_LOCKS_NOTHING": "1"}
    done = run_program("train", recipe, "--run", run, "--device=cuda", "--threads=1", env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "cannot be locked in memory (out of memory)" in line]
    assert len(said) == 1 and len(checkpoints(run)) == 3, done.stderr


QUANTIZED = {
    "int8": dict(teacher__quantize="int8"),
    "int4": dict(teacher__quantize="int4"),
    "nf4": dict(teacher__quantize="nf4", teacher__dtype="bfloat16"),
    "nf4-lora": dict(student__model="wide", student__quantize="nf4", adapter__kind="lora", adapter__rank=4),
    "nf4-lora-bfloat16": dict(student__model="wide", student__quantize="nf4", student__dtype="bfloat16", adapter__kind="lora"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_plan_of_quantized_weights_is_what_a_run_takes(work, kind):
    keys = {"teacher__model": "wide"} | QUANTIZED[kind]
    keys = {key: work.folder / value if value == "wide" else value for key, value in keys.items()}
    run = trained(work, f"plan-{kind}", "cuda", steps=2, **keys)
    planned, took = plan_of(work, kind, run), run.result["peak_bytes"]
    print(f"{kind}: planned {planned}, took {took}: {planned / took:.3f}")
    assert took - 16 * 1024 <= planned <= took
