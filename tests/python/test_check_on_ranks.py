"""What `limbeck check` says of ranks that have a device each, and what they then do, on the fake devices of tests/fake_cuda/:
the verdict, the bytes of each rank, and a fault, which both name in the same words before anything is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from limbeck_runner import run_program
from rank_processes import Ranks
from test_fake_cuda import FOLDER, KINDS, Counters, on_device
from training_work import Work

pytestmark = pytest.mark.skipif(not (FOLDER / "liblimbeck_cuda.so").exists(), reason="built without the fake CUDA device")

RANKS = 2
USUAL = dict(train__steps="3 steps", train__accumulate=4, data__batch_size=2, data__validation=None)
CASES = [(kind, zero) for kind in KINDS for zero in (0, 1, 3)]


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("check_on_ranks"), limbeck)


def planned(work: Work, recipe: Path, name: str) -> dict:
    file = work.folder / f"{name}.check.json"
    on_device("cuda", "check", recipe, f"--parallel.world_size={RANKS}", "--json", file)
    return json.loads(file.read_text())["result"]


def ranks_of(work: Work, recipe: Path, name: str) -> Ranks:
    env = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_DEVICES": str(RANKS)}
    return Ranks(RANKS, recipe, f"--run={work.folder / name}", "--device=cuda", "--quiet", env=env,
                 per_rank=lambda rank: [f"--json={work.folder / name}.json"] if rank == 0 else [],
                 variables=lambda rank: {"LIMBECK_FAKE_CUDA_COUNTERS": str(work.folder / f"{name}-{rank}.counters")})  # fmt: skip


@pytest.mark.parametrize(("kind", "zero"), CASES)
def test_what_check_passes_is_trained_within_its_plan(work, kind, zero):
    name = f"{kind}-zero{zero}"
    recipe = work.recipe(name, **(USUAL | KINDS[kind][0]), parallel__zero=zero)
    plan = planned(work, recipe, name)
    assert plan["ranks"] == RANKS and plan["violations"] == []
    with ranks_of(work, recipe, name) as ranks:
        ranks.end(120).well()
    result = json.loads((work.folder / f"{name}.json").read_text())["result"]
    took, of_processes = result["peak_bytes"], [Counters.of(work.folder / f"{name}-{rank}.counters").peak_bytes for rank in range(RANKS)]
    print(f"{name}: planned {plan['peak_bytes']}, took {took}: {plan['peak_bytes'] / took:.3f}; processes {of_processes}")
    assert result["planned_peak_bytes"] == plan["peak_bytes"]
    # As of a device alone: what the plan leaves out are batches made ahead and what was counted in them.
    assert took - 16 * 1024 <= plan["peak_bytes"] <= took
    assert max(of_processes) <= took + 16 * 1024  # no rank takes more than the one that tells


def refusals(work: Work, name: str, **keys) -> tuple[str, str]:
    """Of check and of training, whose ranks end before there is a step."""
    recipe = work.recipe(name, **(USUAL | keys))
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER)}
    checked = run_program("check", recipe, f"--parallel.world_size={RANKS}", "--device=cuda", "--quiet", env=env, timeout=120)
    assert checked.returncode == 2, checked.stderr
    with ranks_of(work, recipe, name) as ranks:
        ended = ranks.end(120)
    assert ended.codes == [2] * RANKS, ended.errors
    assert not list((work.folder / name).glob("metrics*")), "it began to train"
    return checked.stderr.strip(), ended.errors[0].strip()


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_dtype_that_cannot_train_is_refused_by_both_in_the_same_words(work, zero):
    checked, trained = refusals(work, f"dtype-{zero}", parallel__zero=zero, student__quantize="nf4", student__dtype="float16")
    print(checked)
    assert checked == trained and "gradients would come through float16" in checked


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_batch_beyond_the_memory_of_a_rank_is_refused_by_both_in_the_same_words(work, zero):
    keys = USUAL | dict(parallel__zero=zero)
    peak = planned(work, work.recipe(f"fits-{zero}", **keys), f"fits-{zero}")["peak_bytes"]
    limit = f"{2 * peak / 2**30:.9f}"
    checked, trained = refusals(work, f"large-{zero}", **(keys | dict(data__batch_size=64, parallel__memory_limit=limit)))
    print(checked)
    assert checked == trained and checked.count("\n") == 0
    for part in ("[memory] each of 2 ranks needs ", "a batch of 64 x 24 tokens", f"parallel.memory_limit = {limit}",
                 f"large-{zero}.ini:", "set a smaller data.batch_size"):  # fmt: skip
        assert part in checked, checked
    on_device("cuda", "check", work.recipe(f"allowed-{zero}", **(keys | dict(parallel__memory_limit=limit))), "--parallel.world_size=2")
