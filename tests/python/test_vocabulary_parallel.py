"""objective.vocabulary_parallel: real ranks that divide the vocabulary train as those that do not, to float rounding."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from limbeck_runner import LimbeckError
from rank_processes import Ranks
from safetensors.torch import load_file
from training_work import Work, llama, saved

STEPS = 6
KEYS = dict(train__steps=f"{STEPS} steps", train__accumulate=4, data__batch_size=2, eval__every=3,
            objective__label_smoothing=0.1)  # fmt: skip
NEAR = 2e-6  # of losses and weights: some 30 roundings of float32, six steps long
DIVIDED = dict(objective__vocabulary_parallel="true")


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("vocabulary"), limbeck)


@dataclass
class Trained:
    weights: dict[str, torch.Tensor]
    losses: list[float]
    evaluations: list[dict]

    def worst_loss(self, other: "Trained") -> float:
        assert len(self.losses) == len(other.losses) == STEPS
        return max(abs(a - b) / b for a, b in zip(self.losses, other.losses))

    def worst_weight(self, other: "Trained") -> float:
        """Of each tensor the norm of the difference over its norm; the largest.

        Not element by element: Adam divides a gradient by its own size, so where a float32 gradient is nearly all
        rounding (a row of the embedding) the step is too. One rank and two, undivided, differ there by 3e-6.
        """
        return max(
            float((w.double() - other.weights[n].double()).norm() / w.double().norm()) for n, w in self.weights.items()
        )

    def same_bits(self, other: "Trained") -> bool:
        return self.losses == other.losses and all(torch.equal(w, other.weights[n]) for n, w in self.weights.items())


def trained(work: Work, name: str, ranks: int, *flags: str, **keys) -> Trained:
    recipe, run = work.recipe(name, **(KEYS | keys)), work.folder / f"run-{name}"
    Ranks(ranks, recipe, f"--run={run}", *flags).end().well()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Trained(
        load_file(run / "final" / "model.safetensors"),
        [line["loss"] for line in lines if line["phase"] == "train"],
        [line for line in lines if line["phase"] == "eval"],
    )


@pytest.fixture(scope="module")
def alone(work) -> Trained:
    return trained(work, "alone", 1)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("zero", [0, 3])
def test_ranks_that_divide_the_vocabulary_train_as_one_process(work, alone, ranks, zero):
    divided = trained(work, f"divided-{ranks}-{zero}", ranks, **DIVIDED, parallel__zero=zero)
    assert divided.worst_loss(alone) < NEAR
    assert divided.worst_weight(alone) < NEAR
    for mine, theirs in zip(divided.evaluations, alone.evaluations, strict=True):
        for key in ("loss", "kd", "ce", "perplexity"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key


@pytest.mark.parametrize(
    "divergence", ["reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "logit_mse"]
)
def test_every_divergence_that_is_a_sum_over_ids_can_be_divided(work, divergence):
    keys = dict(objective__divergence=divergence)
    whole = trained(work, f"{divergence}-whole", 2, **keys)
    divided = trained(work, f"{divergence}-divided", 2, **keys, **DIVIDED)
    assert divided.worst_loss(whole) < NEAR
    assert divided.worst_weight(whole) < NEAR


def test_tied_heads_packed_rows_and_a_clamp_are_divided_too(work):
    student = llama(32, 2, seed=4)
    student.config.tie_word_embeddings = True
    student.tie_weights()
    keys = dict(data__packing="packed", objective__clamp=5, train__checkpoint_activations="true",
                student__model=saved(student, work.folder / "tied"))  # fmt: skip
    whole = trained(work, "packed-whole", 2, **keys)
    divided = trained(work, "packed-divided", 2, **keys, **DIVIDED)
    assert divided.worst_loss(whole) < NEAR
    assert divided.worst_weight(whole) < NEAR


@pytest.mark.parametrize("ranks", [2, 4])
def test_bfloat16_differs_by_the_rounding_of_its_gradients(work, ranks):
    keys = dict(student__dtype="bfloat16", teacher__dtype="bfloat16")
    whole = trained(work, f"bfloat16-whole-{ranks}", ranks, **keys)
    divided = trained(work, f"bfloat16-divided-{ranks}", ranks, **keys, **DIVIDED)
    # The gradients of states and head come from other sums and are rounded to 8 bits once: of a row of the head after
    # the tokens of all ranks are summed, and not on each rank. The weights they move are held to one rounding of
    # bfloat16 (2^-8), and the loss, in which the roundings of thousands of weights cancel, to a twentieth of it.
    assert divided.worst_loss(whole) < 2e-4
    assert divided.worst_weight(whole) < 2**-8


def test_a_tree_of_sums_repeats_its_bits_and_is_near_those_of_one_process(work, alone):
    # Not equal bits: the divided head adds tokens of all ranks at once, and ids slice by slice, which one process does
    # in another order. What a tree still promises is the same bits again with as many ranks.
    for ranks in (2, 4):
        once, again = (
            trained(work, f"tree-{ranks}-{i}", ranks, **DIVIDED, parallel__reduce="tree") for i in range(2)
        )
        assert once.same_bits(again)
        assert once.worst_loss(alone) < NEAR
        assert once.worst_weight(alone) < NEAR


def test_one_rank_has_the_whole_vocabulary_with_the_same_bits(work, alone):
    assert trained(work, "alone-divided", 1, **DIVIDED).same_bits(alone)


@pytest.mark.parametrize("divergence", ["uld", "topk_union", "dskd"])
def test_what_cannot_be_divided_is_refused_by_check_and_train(work, limbeck, divergence):
    recipe = work.recipe(f"refused-{divergence}", **KEYS, **DIVIDED, objective__divergence=divergence)
    for command in (["check", str(recipe)], ["train", str(recipe), f"--run={work.folder / ('no-' + divergence)}"]):
        with pytest.raises(LimbeckError, match="exit 2") as refused:
            limbeck.run(*command)
        error = str(refused.value)
        assert "objective.vocabulary_parallel" in error and f"objective.divergence = {divergence}" in error
        assert "set it to forward_kl" in error
