"""Ranks with a fake CUDA device each (tests/fake_cuda/): nccl.cpp is ours unchanged, another stands in NCCL's place.

Every use of memory is held there against what its stream has waited for: that ranks end well says that no wait is missing.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_cuda_work import FLOAT32, FOLDER, Counters, only_where_built, student_of_experts
from rank_processes import Ranks
from training_work import Outcome, Work, checkpoints

pytestmark = only_where_built


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("fake_ranks"), limbeck)


@pytest.fixture(scope="module")
def experts(work) -> Path:
    return student_of_experts(work)


def ranked(work: Work, name: str, size: int, *flags: str, device: str = "cuda", **keys) -> Outcome:
    """Ten steps on so many ranks, each with a fake device of its own; NCCL's place is taken, nccl.cpp is ours unchanged."""
    usual = {"train__steps": "10 steps", "train__accumulate": 4, "data__batch_size": 2}
    recipe, run = work.recipe(name, **(usual | keys)), work.folder / f"run-{name}"
    env = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_DEVICES": str(size)} if device == "cuda" else {}
    Ranks(size, recipe, f"--run={run}", f"--device={device}", *flags, env=env).end(60).well()
    return Outcome.of(run)


def losses(outcome: Outcome) -> list[float]:
    return [line["loss"] for line in outcome.lines if line["phase"] == "train"]


TREE = dict(parallel__reduce="tree")


@pytest.fixture(scope="module")
def alone(work) -> Outcome:
    return ranked(work, "ranks-alone", 1, **TREE)


def test_one_rank_has_the_losses_of_the_cpu(work, alone):
    cpu = ranked(work, "ranks-cpu", 1, device="cpu", **TREE)
    assert losses(alone) == pytest.approx(losses(cpu), rel=FLOAT32)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_two_ranks_have_the_bits_of_one(work, alone, zero):
    assert ranked(work, f"ranks-{zero}", 2, **TREE, parallel__zero=zero).differences(alone) == []


def test_ranks_with_experts_have_the_bits_of_one(work, experts):
    one, two = (ranked(work, f"ranks-experts-{size}", size, **TREE, student__model=experts, parallel__zero=1, train__steps="5 steps")
                for size in (1, 2))
    assert two.differences(one) == []


def test_ranks_whose_average_is_evaluated_have_the_bits_of_one(work):
    keys = TREE | dict(train__steps="4 steps", optim__ema=0.9, eval__every=2)
    one, two = (ranked(work, f"ranks-ema-{size}", size, **keys, parallel__zero=1) for size in (1, 2))
    assert two.differences(one) == []


def test_three_ranks_have_the_losses_of_the_cpu(work):
    keys = dict(train__accumulate=6, parallel__zero=1, parallel__reduce="fast")
    three, cpu = ranked(work, "ranks-three", 3, **keys), ranked(work, "ranks-three-cpu", 1, device="cpu", **keys)
    assert losses(three) == pytest.approx(losses(cpu), rel=FLOAT32)


def test_ranks_resume_with_the_same_bits(work, alone):
    keys = TREE | dict(parallel__zero=1, checkpoint__every=4, checkpoint__keep=3)
    whole = ranked(work, "ranks-whole", 2, **keys)
    assert whole.differences(alone) == []
    run = work.folder / "run-ranks-whole"
    for folder in checkpoints(run):
        if int(folder.name.removeprefix("step-")) > 4:
            shutil.rmtree(folder)
    assert ranked(work, "ranks-whole", 2, **keys).differences(whole) == []


def two_updates(work: Work, size: int, zero: int) -> list[Counters]:
    """Of each rank: what it counts in two updates more."""
    keys = TREE | dict(train__accumulate=4, data__batch_size=2, eval__batches=1, parallel__zero=zero)
    counted = []
    for steps in (2, 4):
        name = f"ranks-waits-{zero}-{size}-{steps}"
        recipe, run = work.recipe(name, **keys, train__steps=f"{steps} steps"), work.folder / f"run-{name}"
        file = work.folder / f"{name}.counters"
        env = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_DEVICES": str(size)}
        Ranks(size, recipe, f"--run={run}", "--device=cuda", env=env,
              variables=lambda rank: {"LIMBECK_FAKE_CUDA_COUNTERS": f"{file}{rank}"}).end(60).well()  # fmt: skip
        counted.append([Counters.of(Path(f"{file}{rank}")) for rank in range(size)])
    return [Counters(*(b - a for a, b in zip(*of_rank))) for of_rank in zip(*counted)]


@pytest.fixture(scope="module")
def two_updates_alone(work) -> Counters:
    return two_updates(work, 1, 0)[0]


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_ranks_make_the_host_wait_no_oftener_than_one_rank(work, two_updates_alone, zero):
    """Streams wait for collectives; the host stands once an update, where its numbers are read, and asks no event."""
    one, two = two_updates_alone, two_updates(work, 2, zero)
    print(f"ZeRO-{zero}, two updates: one rank {one.waits} host waits and {one.polls} questions, two ranks",
          [(rank.waits, rank.polls) for rank in two])  # fmt: skip
    for rank in two:
        assert rank.waits <= one.waits and rank.polls == 0
        # Memory of an operation is free for the next one when a stream waits for it, and not when somebody finds it ended.
        assert rank.peak_bytes <= one.peak_bytes


@contextmanager
def ranks_at_work(work: Work, name: str, size: int, variables=None, **keys) -> Iterator[Ranks]:
    """So many ranks in the midst of their training."""
    recipe, run = work.recipe(name, train__steps="100000 steps", train__accumulate=2 * size, parallel__zero=3,
                              **keys), work.folder / f"run-{name}"  # fmt: skip
    env = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_DEVICES": str(size)}
    metrics = run / "metrics.jsonl"
    with Ranks(size, recipe, f"--run={run}", "--device=cuda", "--train.log_every=1", "--quiet", env=env, variables=variables) as ranks:
        deadline = time.monotonic() + 30
        while not (metrics.exists() and '"step":3' in metrics.read_text()):
            assert time.monotonic() < deadline and ranks.processes[0].poll() is None, ranks.texts()
            time.sleep(0.05)
        yield ranks


@pytest.mark.parametrize("size, killed", [(2, 1), (2, 0), (3, 1)])
def test_a_rank_that_is_killed_is_named(work, size, killed):
    """Long before parallel.timeout, though an operation of NCCL's whose partner is gone never ends."""
    with ranks_at_work(work, f"ranks-killed-{size}-{killed}", size, parallel__timeout=600) as ranks:
        ranks.signal(killed)
        begin = time.monotonic()
        for rank in set(range(size)) - {killed}:
            code, said = ranks.end_of(rank, timeout=10 - (time.monotonic() - begin))
            print(f"rank {rank}, {time.monotonic() - begin:.1f} s: {said}")
            assert code == 7 and f"{ranks.name(killed)} is gone" in said


def test_a_rank_that_stands_still_is_named(work):
    """After parallel.timeout: it might go on before."""
    timeout = 5
    with ranks_at_work(work, "ranks-stopped", 2, parallel__timeout=timeout) as ranks:
        ranks.signal(1, signal.SIGSTOP)
        begin = time.monotonic()
        # After the timeout: 1.8 s to see who is silent, 3 s for a last round of the watches, 1.8 s to see the others off,
        # and 2 s for a store that answers slowly; what is left over is for a machine that is busy.
        code, said = ranks.end_of(0, timeout=timeout + 15)
        print(f"{time.monotonic() - begin:.1f} s: {said}")
        assert code == 7 and f"{ranks.name(1)} is gone or stands still" in said
        assert time.monotonic() - begin > timeout / 2


def test_an_error_that_nccl_reports_ends_all_ranks(work):
    broken = {1: {"LIMBECK_FAKE_CUDA_BROKEN_COLLECTIVE": "400"}}
    with ranks_at_work(work, "ranks-broken", 2, variables=lambda rank: broken.get(rank, {}), parallel__timeout=600) as ranks:
        ended = ranks.end(20)
    print("\n".join(ended.errors))
    assert ended.codes == [7, 7] and "failed on rank 1: NCCL error: remote process exited" in ended.errors[1]
    assert f"{ranks.name(1)} ended: " in ended.errors[0] and "NCCL error" in ended.errors[0]
    trace = work.folder / "run-ranks-broken" / "nccl-trace-rank1.json"
    assert f"the last operations are in {trace}" in ended.errors[1] and json.loads(trace.read_text())["entries"]


def test_ranks_that_are_told_to_stop_save_first(work):
    """The one that says farewell first takes nothing down."""
    with ranks_at_work(work, "ranks-told", 2, parallel__timeout=600) as ranks:
        ranks.signal(1, signal.SIGTERM)
        ended = ranks.end(20)
    assert ended.codes == [75, 75] and "with everything saved" in ended.errors[0], ended.errors
