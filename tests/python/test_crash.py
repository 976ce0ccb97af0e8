"""kill -9 of a random rank at a random moment of training and saving, again and again: nothing is lost, and the run ends
with the bits of the one that nobody interrupted. LIMBECK_KILLS=300 for more than the 30 of every run."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from limbeck_runner import run_program
from rank_processes import Ranks
from training_work import Outcome, Work, checkpoints

KILLS = int(os.environ.get("LIMBECK_KILLS", "30"))
CASES = [(dtype, ranks) for dtype in ("float32", "bfloat16", "float16") for ranks in (1, 2)]
KILLS_A_RUN = 10
STEPS = 36
# float16 begins with a scale that overflows, so that skipped steps and the scale's history are part of what is compared.
KEYS = dict(
    train__steps=f"{STEPS} steps", train__accumulate=4, data__batch_size=2, eval__every=12, checkpoint__every=1,
    checkpoint__keep=2, optim__loss_scale_start=2**24, optim__loss_scale_growth_interval=7, optim__max_skipped=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("crash"), limbeck)


def acknowledged(run: Path) -> int:
    """The newest step that the run itself called saved."""
    path = run / "metrics.jsonl"
    steps = [0]
    for text in path.read_text().splitlines() if path.exists() else []:
        if '"phase":"checkpoint"' not in text:
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the line that the kill cut short
        steps.append(int(line["saved_step"]))
    return max(steps)


def verify_all(run: Path) -> int:
    """Every committed checkpoint is whole; how many there are."""
    found = checkpoints(run)
    for checkpoint in found:
        done = run_program("verify", checkpoint, "--quiet", timeout=60)
        assert done.returncode == 0, f"{checkpoint}: committed and not whole: {done.stderr}"
    return len(found)


def killed_run(recipe: Path, run: Path, ranks: int, planned: int, chance: random.Random):
    """Kills and resumes one run until it ends: how many kills it met, half-written folders, the steps it went on from."""
    kills, leftovers, resumed_from = 0, 0, []
    for attempt in range(20 * planned + 20):
        process = Ranks(ranks, recipe, f"--run={run}", "--resume=auto")
        before = acknowledged(run)
        if kills < planned:
            # Up to a moment after the first new checkpoint, so that the run is killed often and yet goes on.
            deadline = time.monotonic() + 60
            until = before + chance.randrange(0, STEPS // planned)
            while acknowledged(run) <= until and process.processes[0].poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.08))
            victim = chance.randrange(ranks)
            if process.processes[victim].poll() is None:
                process.signal(victim)
                kills += 1
        ended = process.end(120)
        text = "\n".join(ended.errors)
        if found := re.search(r"resumed from \S*step-(\d+)", text):
            resumed_from.append(int(found[1]))
            assert int(found[1]) >= before, f"acknowledged step {before} is lost, resumed from {found[1]}"
        leftovers += len(list((run / "checkpoints").glob(".tmp-*")))
        verify_all(run)
        if ended.codes == [0] * ranks:
            return kills, leftovers, resumed_from
        assert all(code in (-9, 7) for code in ended.codes), (ended.codes, text)
    raise AssertionError(f"never ended: {kills} kills, {resumed_from}")


@pytest.mark.parametrize(("dtype", "ranks"), CASES, ids=[f"{dtype}-{ranks}" for dtype, ranks in CASES])
def test_every_kill_costs_only_the_steps_since_the_last_checkpoint(work, dtype, ranks):
    keys = KEYS | dict(student__dtype=dtype, teacher__dtype=dtype)
    name = f"{dtype}-{ranks}"
    whole = work.folder / f"whole-{name}"
    straight = Ranks(ranks, work.recipe(f"whole-{name}", **keys), f"--run={whole}").end().well()
    wanted = Outcome.of(whole)
    assert verify_all(whole) == 2

    chance = random.Random(f"{name} {KILLS}")
    wanted_kills, kills, leftovers, resumed_from, differences = -(-KILLS // len(CASES)), 0, 0, [], []
    recipe, runs = work.recipe(f"killed-{name}", **keys), 0
    while kills < wanted_kills:  # a run has room for a few kills; then the next run takes the rest
        run = work.folder / f"killed-{name}-{runs}"
        planned = min(wanted_kills - kills, KILLS_A_RUN)
        done, left, resumed = killed_run(recipe, run, ranks, planned, chance)
        kills, leftovers, resumed_from, runs = kills + done, leftovers + left, resumed_from + resumed, runs + 1
        differences += Outcome.of(run).differences(wanted)
    scales = {line["loss_scale"] for line in wanted.lines if line["phase"] == "train"}
    print(f"{name}: {kills} kills in {runs} runs, resumed from {resumed_from}, {leftovers} half-written folders left by kills and swept, "
          f"{len(differences)} differences, loss scales {sorted(scales)}, uninterrupted {straight.seconds:.1f} s")  # fmt: skip
    assert differences == []
    if dtype == "float16":
        assert len(scales) > 3, "the loss scale never moved: nothing was tested"
