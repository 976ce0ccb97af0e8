"""What --resume takes, what it refuses, and what it says; and a run whose disk fills up, is read-only or vanishes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from limbeck_runner import run_program
from rank_processes import Ranks
from training_work import Outcome, Work, checkpoints, newest_checkpoint

import token_rows

KEYS = dict(train__steps="30 steps", data__batch_size=2, eval__every=10, checkpoint__every=5, checkpoint__keep=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("resume"), limbeck)


@pytest.fixture(scope="module")
def whole(work) -> Path:
    run = work.folder / "run-whole"
    Ranks(1, work.recipe("whole", **KEYS), f"--run={run}").end().well()
    return run


def copied(whole: Path, name: str, newest: int | None = None) -> Path:
    """The run as it was when checkpoint `newest` was its last one."""
    run = whole.parent / f"run-{name}"
    shutil.copytree(whole, run)
    for checkpoint in checkpoints(run):
        if newest is not None and int(checkpoint.name.removeprefix("step-")) > newest:
            shutil.rmtree(checkpoint)
    return run


def train(recipe: Path, run: Path, *flags: str) -> tuple[int, str]:
    ended = Ranks(1, recipe, f"--run={run}", *flags).end(120)
    return ended.codes[0], ended.errors[0]


def test_auto_is_the_default_and_ends_with_the_same_bits(work, whole):
    run = copied(whole, "auto", newest=20)
    code, text = train(work.recipe("whole", **KEYS), run)
    assert code == 0 and "resumed from" in text and "20 of 30 steps are done" in text, text
    assert Outcome.of(run).differences(Outcome.of(whole)) == []


def test_a_complete_run_is_left_as_it_is(work, whole):
    run = copied(whole, "complete")
    code, text = train(work.recipe("whole", **KEYS), run)
    assert code == 0 and "30 of 30 steps are done" in text, text
    assert Outcome.of(run).differences(Outcome.of(whole)) == []


def test_never_refuses_a_folder_that_holds_a_run(work, whole):
    code, text = train(work.recipe("whole", **KEYS), copied(whole, "never"), "--resume=never")
    assert code == 2 and "holds a run already" in text and "--run=DIR" in text, text


def test_a_run_without_a_checkpoint_is_begun_again_only_when_asked(work, whole):
    run = copied(whole, "bare", newest=0)
    code, text = train(work.recipe("whole", **KEYS), run)
    assert code == 2 and "no checkpoint of it" in text and "--resume=auto" in text, text
    code, text = train(work.recipe("whole", **KEYS), run, "--resume=auto")
    assert code == 0, text
    assert Outcome.of(run).differences(Outcome.of(whole)) == []


def test_a_checkpoint_by_name_begins_a_folder_of_its_own(work, whole):
    run = work.folder / "run-named"
    code, text = train(work.recipe("whole", **KEYS), run, f"--resume={whole}/checkpoints/step-00000020")
    assert code == 0, text
    outcome, wanted = Outcome.of(run), Outcome.of(whole)
    assert outcome.weights.keys() == wanted.weights.keys()
    outcome.lines = wanted.lines = []  # the first 20 are in the other folder
    assert outcome.differences(wanted) == []


def test_going_back_within_a_run_wants_newer_checkpoints_gone(work, whole):
    run = copied(whole, "back")
    code, text = train(work.recipe("whole", **KEYS), run, f"--resume={run}/checkpoints/step-00000020")
    assert code == 2 and "step-00000030, step-00000025" in text and "move them away" in text, text
    code, text = train(work.recipe("whole", **KEYS), run, f"--resume={run}/nothing")
    assert code == 2 and "is no folder" in text, text


@pytest.mark.parametrize(
    ("key", "value"),
    [("train__steps", "40 steps"), ("optim__learning_rate", 2e-3), ("data__batch_size", 4), ("seed", 9),
     ("student__dtype", "bfloat16"), ("objective__temperature", 3)],
)  # fmt: skip
def test_another_recipe_is_refused_with_the_keys_that_differ(work, whole, key, value):
    run = copied(whole, f"other-{key}", newest=20)
    name = key.replace("__", ".")
    recipe = work.recipe(f"other-{key}", **(KEYS | {key: value}))
    if key == "seed":
        recipe.write_text("seed = 9\n" + work.recipe("other-seed", **KEYS).read_text())
    code, text = train(recipe, run)
    assert code == 4 and f"{name} was" in text and f"--resume.allow={name}" in text, text
    assert len(checkpoints(run)) == 1
    if key == "train__steps":
        code, text = train(recipe, run, f"--resume.allow={name}")
        assert code == 0 and f"with another recipe (--resume.allow): {name} was 30 steps, is 40 steps" in text, text
        assert newest_checkpoint(run).name == "step-00000040"


def test_keys_that_decide_no_bit_may_change(work, whole):
    run = copied(whole, "free", newest=20)
    keys = KEYS | dict(checkpoint__every=7, train__checkpoint_activations="true", data__prefetch=0, eval__every=10)
    code, text = train(work.recipe("free", **keys), run)
    assert code == 0, text
    assert Outcome.of(run).differences(Outcome.of(whole)) == []


def test_other_data_under_the_same_name_is_refused(work, whole):
    data = work.folder / "moving-data"
    shutil.copytree(work.folder / "train", data)
    recipe, run = work.recipe("moving", **KEYS, data__train=data), work.folder / "run-moving"
    Ranks(1, recipe, f"--run={run}").end().well()
    shutil.rmtree(newest_checkpoint(run))
    shutil.rmtree(data)
    token_rows.write(data, token_rows.random_documents(400, 6, 24, 211, seed=99), 211)
    code, text = train(recipe, run)
    assert code == 4 and "digest of data.train was" in text and "--resume.allow=data.train" in text, text
    code, text = train(recipe, run, "--resume.allow=data.train")
    assert code == 0, text


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(work, whole):
    run = copied(whole, "damaged", newest=25)
    flip(newest_checkpoint(run) / "optim-00000.safetensors", -5)
    before = sorted(path.name for path in checkpoints(run))
    code, text = train(work.recipe("whole", **KEYS), run, "--resume.strict=true")
    assert code == 4 and "optim-00000.safetensors" in text and "step-00000025" in text, text
    assert sorted(path.name for path in checkpoints(run)) == before
    code, text = train(work.recipe("whole", **KEYS), run)
    assert code == 0 and "step-00000025" in text and "optim-00000.safetensors" in text, text
    assert "20 of 30 steps are done" in text, text
    assert Outcome.of(run).differences(Outcome.of(whole)) == []


def test_no_good_checkpoint_is_an_error_and_not_a_new_run(work, whole):
    run = copied(whole, "hopeless")
    for checkpoint in checkpoints(run):
        flip(checkpoint / "model-00000.safetensors", -1)
    code, text = train(work.recipe("whole", **KEYS), run, "--resume=auto")
    assert code == 4 and "model-00000.safetensors" in text, text
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_two_runs_in_one_folder(work):
    recipe, run = work.recipe("owner", **(KEYS | dict(train__steps="3000 steps"))), work.folder / "run-owner"
    first = Ranks(1, recipe, f"--run={run}")
    wait_for(lambda: (run / "metrics.jsonl").exists(), first)
    code, text = train(recipe, run)
    assert code == 2 and f"process {first.processes[0].pid}" in text and "--run=DIR" in text, text
    first.signal(0)
    first.end()
    code, text = train(recipe, run, "--train.steps=40 steps", "--resume.allow=train.steps", "--resume=auto")
    assert code == 0, text  # the lock went with its owner


def test_verify_resume_trains_twice_and_compares(work):
    recipe, run = work.recipe("twice", **KEYS, optim__ema=0.9), work.folder / "run-twice"
    for ranks in (1, 2):
        flags = [f"--run={run}{ranks}", "--verify-resume=6", "--train.accumulate=2"]
        ended = Ranks(ranks, recipe, *flags).end().well()
        assert "6 updates after step 0, trained twice from one checkpoint" in ended.errors[0], ended.errors
        assert "same bits" in ended.errors[0]


def test_weights_that_are_not_finite_are_kept_aside(work):
    run = work.folder / "run-diverged"
    # Each update multiplies weights by 1 - 1000 x 1000: the first leaves the range of float16.
    recipe = work.recipe("diverged", **(KEYS | dict(checkpoint__every=1, eval__every=0, student__dtype="float16", teacher__dtype="float16",
                                            optim__learning_rate=1000, optim__weight_decay=1000, optim__warmup="1 steps")))
    code, text = train(recipe, run)
    assert code == 5 and "not finite" in text and "diverged-" in text and "optim.learning_rate" in text, text
    assert list((run / "checkpoints").glob("diverged-*")) and not (run / "final").exists()
    for checkpoint in checkpoints(run):
        assert run_program("verify", checkpoint, "--quiet").returncode == 0


def wait_for(condition, ranks: Ranks, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert ranks.processes[0].poll() is None, ranks.end().errors
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def saved(run: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in checkpoints(run)), default=0)


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("this machine mounts no tmpfs here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(ballast: Path) -> None:
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


LONG = KEYS | dict(train__steps="100000 steps", eval__every=0, checkpoint__max_failures=1000, optim__warmup="2 steps")


def newest_verifies(work, run: Path) -> bool:
    """One that a later save pushed out while it was being read was not the newest."""
    for _ in range(50):
        newest = newest_checkpoint(run)
        if run_program("verify", newest, "--quiet").returncode == 0:
            return True
        if newest == newest_checkpoint(run):
            return False
    return False


def test_a_full_disk_costs_checkpoints_and_nothing_else(work, small_disk):
    run, ballast = small_disk / "run", small_disk / "ballast"
    ranks = Ranks(1, work.recipe("full", **LONG), f"--run={run}")
    wait_for(lambda: saved(run) > 0, ranks)
    # Room for nothing, for a part of the first file, for the files and no manifest ...: a save needs some 350 kB.
    for room in (0, 8, 120, 300, 345, 360):
        good = saved(run)
        fill(ballast)
        os.truncate(ballast, max(0, ballast.stat().st_size - room * 1024))
        time.sleep(1)  # dozens of steps: several checkpoints are tried
        assert newest_verifies(work, run), room
        ballast.unlink()
        wait_for(lambda: saved(run) > good, ranks)
    ranks.signal(0, number=15)
    ended = ranks.end()
    assert ended.codes == [75], ended.errors
    assert "checkpoint failed" in ended.errors[0] and "No space left" in ended.errors[0], ended.errors[0][-2000:]
    assert "lines wait in memory" in ended.errors[0]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"phase":"train"' in line]
    assert steps == list(range(1, steps[-1] + 1)), "lines were lost"


def test_a_disk_that_stays_full_ends_the_run_with_6(work, small_disk):
    run, ballast = small_disk / "run", small_disk / "ballast"
    ranks = Ranks(1, work.recipe("stays", **(LONG | dict(checkpoint__max_failures=2))), f"--run={run}")
    wait_for(lambda: saved(run) > 0, ranks)
    fill(ballast)
    ended = ranks.end(60)
    assert ended.codes == [6] and "2 checkpoints in a row failed (checkpoint.max_failures)" in ended.errors[0], ended
    assert run_program("verify", newest_checkpoint(run), "--quiet").returncode == 0


def test_a_read_only_disk_is_refused_at_the_start_and_survived_later(work, small_disk):
    remount = lambda mode: subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=True)  # noqa: E731
    remount("ro")
    code, text = train(work.recipe("ro", **LONG), small_disk / "run")
    assert code == 6 and "Read-only file system" in text and "--run=DIR" in text, text
    remount("rw")


def test_a_vanished_folder_is_survived_until_checkpoints_fail_too_often(work, tmp_path):
    run = tmp_path / "run"
    ranks = Ranks(1, work.recipe("vanished", **(LONG | dict(checkpoint__max_failures=3))), f"--run={run}")
    wait_for(lambda: saved(run) > 0, ranks)
    shutil.move(run, tmp_path / "away")
    ended = ranks.end(60)
    assert ended.codes == [6] and "3 checkpoints in a row failed" in ended.errors[0], ended
    assert "No such file" in ended.errors[0]
    for checkpoint in checkpoints(tmp_path / "away"):
        assert run_program("verify", checkpoint, "--quiet").returncode == 0
