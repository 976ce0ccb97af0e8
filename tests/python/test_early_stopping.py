"""Runs that end before their steps do, or have more steps behind them than their recipe wants."""

import shutil

import pytest
from limbeck_runner import Limbeck, LimbeckError
from rank_processes import Ranks

from training_work import Outcome, Work

# So great a rate that evaluations soon stop getting better.
KEYS = dict(train__steps="60 steps", eval__every=3, optim__learning_rate=0.5, optim__schedule="constant",
            train__early_stopping_patience=2, checkpoint__every=1, checkpoint__keep=99)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("early"), limbeck)


@pytest.fixture(scope="module")
def early(work):
    return work.train("early", threads=1, **KEYS)


def evaluations(run):
    return [(line["step"], line["perplexity"]) for line in run.lines if line["phase"] == "eval"]


def test_a_run_ends_when_its_evaluations_get_no_better(early):
    steps, values = zip(*evaluations(early))
    best = values.index(min(values))
    print(f"evaluated {dict(zip(steps, values))}")
    assert len(values) == best + 3 and steps[-1] < 60, "two evaluations after the best one"
    assert early.result["steps"] == steps[-1] and early.result["best_step"] == steps[best]
    assert early.result["stopped_early"] is True


def test_a_resumed_run_ends_at_the_same_step_with_the_same_bits(work, early):
    """From one step before the end, and from the end, where nothing is left to do."""
    for name, back in (("before", 1), ("end", 0)):
        folder = work.folder / f"again-{name}"
        shutil.copytree(early.folder, folder)
        for step in range(early.result["steps"] - back + 1, early.result["steps"] + 1):
            shutil.rmtree(folder / "checkpoints" / f"step-{step:08}")
        Limbeck(threads=1).run("train", str(early.recipe), f"--run={folder}")
        assert Outcome.of(folder).weights.keys() == Outcome.of(early.folder).weights.keys()
        assert (folder / "final" / "model.safetensors").read_bytes() == (
            early.folder / "final" / "model.safetensors"
        ).read_bytes()
        assert [line["step"] for line in map(dict, Outcome.of(folder).lines)][-1] == early.result["steps"]


def test_two_ranks_end_where_one_does(work):
    recipe = work.recipe("ranks", train__accumulate=2, parallel__reduce="tree", **KEYS)
    alone, divided = work.folder / "ranks-1", work.folder / "ranks-2"
    Limbeck(threads=1).run("train", str(recipe), f"--run={alone}")
    with Ranks(2, recipe, f"--run={divided}") as ranks:
        said = ranks.end().well().errors
    one, two = Outcome.of(alone), Outcome.of(divided)
    assert one.lines[-1]["step"] < 60, "it ended early"
    assert one.differences(two) == []
    told = f"stopped early after step {one.lines[-1]['step']}"
    assert [text.count(told) for text in said] == [1, 0]


def test_patience_without_evaluations_is_refused(work):
    recipe = work.recipe("none", train__early_stopping_patience=2)
    with pytest.raises(LimbeckError, match="exit 2.*") as failure:
        work.limbeck.run("train", str(recipe), f"--run={work.folder / 'none'}")
    assert "without eval.every: set it, such as --eval.every=100" in str(failure.value)


def test_fewer_steps_than_are_done_are_said(work, early):
    folder = work.folder / "fewer"
    shutil.copytree(early.folder, folder)
    done = Limbeck(threads=1).run(
        "train", str(early.recipe), f"--run={folder}", "--train.steps=2 steps", "--resume.allow=train.steps"
    )
    steps = early.result["steps"]
    assert f"train.steps = 2 steps (--train.steps) is less than the {steps} updates that are done" in done.stderr
    assert done.stderr.count("is less than") == 1
    assert f"nothing is trained, and final/ is the model after step {steps}" in done.stderr
