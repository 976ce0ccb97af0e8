"""One recipe on 1, 2 and 4 processes: the same bits where sums are a fixed tree, float32 rounding where they are not."""

from __future__ import annotations

import json
import time

import pytest
import torch
from rank_processes import Ranks
from test_adapter_training import sparse_student
from training_work import Outcome, Work

STEPS = 14
KEYS = dict(train__steps=f"{STEPS} steps", train__accumulate=8, data__batch_size=2, eval__every=7)
LONG = KEYS | dict(parallel__reduce="tree")
# Bits that differ do so in the sums of the first update, and in what the optimizer keeps by the second; the warm-up ends
# with the fifth. What is interrupted runs longer, so that there is something left to interrupt.
TREE = LONG | dict(train__steps="6 steps", eval__every=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("ranks"), limbeck)


def outcome(work: Work, name: str, ranks: int, *flags: str, **keys) -> Outcome:
    recipe, run = work.recipe(name, **keys), work.folder / f"run-{name}"
    Ranks(ranks, recipe, f"--run={run}", *flags).end().well()
    return Outcome.of(run)


@pytest.fixture(scope="module")
def alone(work) -> Outcome:
    return outcome(work, "alone", 1, **TREE)


@pytest.fixture(scope="module")
def long_alone(work) -> Outcome:
    return outcome(work, "long-alone", 1, **LONG)


@pytest.fixture(scope="module")
def fast_alone(work) -> Outcome:
    return outcome(work, "fast-alone", 1, **KEYS)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_tree_of_sums_gives_the_same_bits_on_any_number_of_ranks(work, alone, ranks, zero):
    assert outcome(work, f"tree-{ranks}-{zero}", ranks, **TREE, parallel__zero=zero).differences(alone) == []


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_fast_sums_agree_within_rounding(work, fast_alone, zero):
    # One process adds in order, two add halves: float32 rounding alone, 14 steps long.
    one = fast_alone
    two = outcome(work, f"fast-2-{zero}", 2, **KEYS, parallel__zero=zero)
    for name, weight in one.weights.items():
        worst = float((weight - two.weights[name]).abs().max() / weight.abs().max())
        assert worst < 2e-5, (name, worst)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_weights_keep_their_bits_and_their_loss_scale(work, dtype):
    keys = TREE | dict(student__dtype=dtype, teacher__dtype=dtype)
    one = outcome(work, f"half-{dtype}-1", 1, **keys)
    for ranks, zero in ((2, 0), (4, 3)):
        assert outcome(work, f"half-{dtype}-{ranks}-{zero}", ranks, **keys, parallel__zero=zero).differences(one) == []


@pytest.mark.parametrize(
    "keys",
    [
        dict(train__checkpoint_activations="true"),
        dict(objective__layer_weight=0.5, objective__feature_weight=0.5, objective__mixer_weight=0.5),
        dict(optim__ema=0.9),
        dict(data__packing="packed", student__init="random"),
        dict(teacher__quantize="nf4-double", precision__rule="teacher.layers.0.** int8"),
    ],
    ids=["checkpointed", "states-of-experts", "ema", "packed", "quantized"],
)
def test_objectives_and_options_keep_their_bits_too(work, keys, request):
    name = request.node.callspec.id
    if name == "quantized":  # packed linear modules and packed experts
        keys = keys | dict(teacher__model=sparse_student(work))
    if name == "states-of-experts":
        keys = keys | dict(student__model=sparse_student(work))
    one = outcome(work, f"{name}-1", 1, **(TREE | keys))
    for ranks, zero in ((2, 3), (4, 2)):
        assert outcome(work, f"{name}-{ranks}-{zero}", ranks, **(TREE | keys), parallel__zero=zero).differences(one) == []


@pytest.mark.parametrize("path", [(2, 4), (2, 1), (4, 2), (1, 4)], ids=lambda path: f"{path[0]}-to-{path[1]}")
@pytest.mark.parametrize("zero", [0, 3])
def test_a_run_goes_on_with_another_number_of_ranks(work, long_alone, path, zero):
    first, then = path
    name = f"elastic-{first}-{then}-{zero}"
    recipe, run = work.recipe(name, **LONG, parallel__zero=zero), work.folder / f"run-{name}"
    ranks = Ranks(first, recipe, f"--run={run}", "--checkpoint.every=1", "--checkpoint.keep=3")
    while sum('"phase":"train"' in line for line in lines(run)) < STEPS // 3:
        assert ranks.processes[0].poll() is None, ranks.end().errors
        time.sleep(0.002)
    ranks.signal(0, number=15)
    ended = ranks.end()
    assert ended.codes == [75] * first, ended
    stopped = sum('"phase":"train"' in line for line in lines(run))
    assert 0 < stopped < STEPS
    Ranks(then, recipe, f"--run={run}").end().well()
    assert Outcome.of(run).differences(long_alone) == []


def lines(run) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_evaluation_does_not_depend_on_the_number_of_ranks(work, alone):
    two = outcome(work, "evaluation", 2, **TREE, eval__batches=7)
    one = outcome(work, "evaluation-1", 1, **TREE, eval__batches=7)
    evaluations = [[line for line in of.lines if line["phase"] == "eval"] for of in (one, two)]
    assert len(evaluations[0]) == 2 and evaluations[0] == evaluations[1]


def test_per_rank_times_are_in_the_metrics(work):
    run = work.folder / "run-times"
    Ranks(2, work.recipe("times", **KEYS), f"--run={run}").end().well()
    for line in map(json.loads, lines(run)):
        if line["phase"] == "train":
            assert 0 < line["rank_seconds_fastest"] <= line["rank_seconds_slowest"] <= line["seconds"] * 1.5
            assert line["slowest_rank"] in (0, 1) and 0 < line["straggler_score"] <= 1
            assert 0 <= line["communication_hidden"] <= 1


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--train.accumulate=3"], ["train.accumulate = 3", "there are 2", "multiple of 2"]),
        (["--train.accumulate=6", "--parallel.reduce=tree"], ["powers of two", "6"]),
    ],
)
def test_updates_that_cannot_be_divided_are_refused_on_every_rank(work, flags, wanted):
    ended = Ranks(2, work.recipe("undivided", **KEYS), f"--run={work.folder}/run-undivided", *flags).end(60)
    assert ended.codes == [2, 2] and ended.errors[1] == ""
    for word in wanted:
        assert word in ended.errors[0], ended.errors[0]


def test_checkpoint_of_ranks_opens_in_other_tools(work):
    run = work.folder / "run-tools"
    Ranks(2, work.recipe("tools", **TREE), f"--run={run}").end().well()
    outcome = Outcome.of(run)
    final = {name: tensor for name, tensor in outcome.weights.items()}
    for name, tensor in outcome.state.items():
        if name == "model student.lm_head.weight":
            assert torch.equal(tensor, final["lm_head.weight"].flatten())
            return
    raise AssertionError(f"no head among {list(outcome.state)}")
