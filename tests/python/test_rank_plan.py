"""What `limbeck check` plans for each of many ranks, and what a rank of the real run holds in tensors."""

from __future__ import annotations

import json

import pytest
import token_rows
from limbeck_runner import Limbeck, LimbeckError
from rank_processes import Ranks
from training_work import Work, llama, saved

VOCABULARY = 2048


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    work = Work(tmp_path_factory.mktemp("plan"), limbeck)
    saved(llama(256, 6, seed=1, vocabulary=VOCABULARY), work.folder / "large")
    saved(llama(192, 8, seed=2, vocabulary=VOCABULARY), work.folder / "large-student")
    documents = token_rows.random_documents(80, 60, 63, VOCABULARY, seed=7)
    token_rows.write(work.folder / "large-data", documents, VOCABULARY)
    return work


def keys_of(work: Work, **more):
    return dict(teacher__model=work.folder / "large", student__model=work.folder / "large-student",
                data__train=work.folder / "large-data", data__validation=None, data__sequence_length=64,
                data__batch_size=4, train__steps="2 steps", train__accumulate=4, checkpoint__keep=0) | more  # fmt: skip


CASES = {
    "ddp": (2, dict(parallel__zero=0)),
    "zero1": (2, dict(parallel__zero=1)),
    "zero2": (2, dict(parallel__zero=2)),
    "zero3": (2, dict(parallel__zero=3)),
    "zero3-on-4": (4, dict(parallel__zero=3)),
    "zero3-bfloat16": (2, dict(parallel__zero=3, student__dtype="bfloat16", teacher__dtype="bfloat16")),
    "zero3-checkpointed": (2, dict(parallel__zero=3, train__checkpoint_activations="yes")),
    "tree": (2, dict(parallel__zero=0, parallel__reduce="tree")),
    "zero2-tree": (2, dict(parallel__zero=2, parallel__reduce="tree")),
    "tree-alone": (1, dict(parallel__reduce="tree")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_of_a_rank_is_within_five_percent_of_what_it_holds(work, limbeck, case):
    ranks, keys = CASES[case]
    recipe = work.recipe(case, **keys_of(work, **keys))
    out = [work.folder / f"{case}-{rank}.json" for rank in range(ranks)]
    with Ranks(ranks, recipe, f"--run={work.folder / case}", per_rank=lambda rank: [f"--json={out[rank]}"]) as run:
        run.end().well()
    result = json.loads(out[0].read_text())["result"]
    planned, measured = result["planned_peak_bytes"], result["peak_bytes"]
    print(f"{case}: planned {planned / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB, ratio {planned / measured:.3f}")
    assert planned == pytest.approx(measured, rel=0.05)

    check = work.folder / f"{case}-check.json"
    Limbeck(threads=2).run("check", str(recipe), f"--parallel.world_size={ranks}", f"--json={check}")
    plan = json.loads(check.read_text())["result"]
    assert plan["ranks"] == ranks
    assert plan["peak_bytes"] == pytest.approx(planned, rel=0.01)  # on another number of threads


def test_ranks_divide_what_zero_says(work, limbeck):
    def plan(ranks: int, zero: int) -> dict:
        out = work.folder / f"divide-{ranks}-{zero}.json"
        recipe = work.recipe(f"divide-{ranks}-{zero}", **keys_of(work, parallel__zero=zero, train__accumulate=8))
        limbeck.run("check", str(recipe), f"--parallel.world_size={ranks}", f"--json={out}")
        return json.loads(out.read_text())["result"]["memory"]

    one = plan(1, 0)
    divided = {1: ["masters, moments and EMA"], 2: ["masters, moments and EMA", "gradients"],
               3: ["masters, moments and EMA", "gradients", "student weights", "teacher weights"]}  # fmt: skip
    for zero, names in divided.items():
        eight = plan(8, zero)
        for name in ("teacher weights", "student weights", "gradients", "masters, moments and EMA"):
            wanted = one[name] / 8 if name in names else one[name]
            assert eight[name] == pytest.approx(wanted, rel=0.02), (zero, name)


def test_micro_batches_that_ranks_cannot_divide_are_refused_by_check(work, limbeck):
    recipe = work.recipe("three", **keys_of(work))
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*train\.accumulate = 4 .*set it to a multiple of 3"):
        limbeck.run("check", str(recipe), "--parallel.world_size=3")
