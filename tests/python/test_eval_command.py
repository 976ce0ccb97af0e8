"""Which student `limbeck eval` evaluates: the one that a run saved, an adapter of it, or the recipe's own."""

import json

import pytest
from limbeck_runner import Limbeck, LimbeckError

from training_work import Work

ADAPTER = dict(adapter__kind="lora", adapter__rank=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("eval"), limbeck)


@pytest.fixture(scope="module")
def trained(work):
    return work.train("trained", train__steps="12 steps")


@pytest.fixture(scope="module")
def adapted(work):
    return work.train("adapted", train__steps="12 steps", **ADAPTER)


def evaluated(work, recipe, *flags):
    out = work.folder / "eval.json"
    done = Limbeck().run("eval", str(recipe), *map(str, flags), "--json", str(out))
    return json.loads(out.read_text())["result"], done.stdout


def perplexity_of(run):
    return run.series("perplexity", "eval")[-1]


@pytest.mark.parametrize("kind", ["trained", "adapted"])
def test_the_best_of_a_run_is_taken_and_said(work, request, kind):
    run = request.getfixturevalue(kind)
    result, said = evaluated(work, run.recipe, f"--run={run.folder}")
    assert result["perplexity"] == perplexity_of(run)
    best = str(run.folder / "best")
    assert result["evaluated"] == best and f"student of {best} (--run)" in said


def test_without_a_run_the_untrained_student_is_said(work, trained):
    result, said = evaluated(work, trained.recipe)
    student = str(work.folder / "student")
    assert result["perplexity"] != perplexity_of(trained)
    assert result["evaluated"] == student and f"student of {student}, as the recipe begins with it" in said


def test_a_run_that_saved_none_is_refused(work, trained, tmp_path):
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        evaluated(work, trained.recipe, f"--run={tmp_path}")
    assert f"{tmp_path}: holds no best, final or stopped (--run): name another run, or a student with --checkpoint=DIR" in str(
        failure.value
    )


def test_what_a_checkpoint_is_decides_its_folder_and_not_the_recipe(work, trained, adapted):
    """An adapter with a recipe that trains none, a whole student with one that does."""
    result, said = evaluated(work, trained.recipe, f"--checkpoint={adapted.folder / 'best'}")
    assert result["perplexity"] == perplexity_of(adapted)
    assert f"student of {adapted.folder / 'best'} (--checkpoint)" in said
    result, _ = evaluated(work, adapted.recipe, f"--checkpoint={trained.folder / 'final'}")
    assert result["perplexity"] == perplexity_of(trained)


@pytest.mark.parametrize("kind", ["trained", "adapted"])
def test_a_run_that_goes_on_when_all_is_done_knows_its_best(work, request, kind):
    """A model's folder and an adapter's have other files in them."""
    run, out = request.getfixturevalue(kind), work.folder / "again.json"
    done = Limbeck().run("train", str(run.recipe), f"--run={run.folder}", "--json", str(out))
    again = json.loads(out.read_text())["result"]
    for name in ("best_model", "best_step", "evaluated_step", "evaluation"):
        assert again[name] == run.result[name], name
    assert again["best_model"] == str(run.folder / "best") and "evaluated after step 12:" in done.stdout


def test_wrong_ids_are_refused_before_a_model_is_looked_for(work):
    with pytest.raises(LimbeckError, match="wanted integers with commas between"):
        Limbeck().run("generate", "--model", str(work.folder / "nowhere"), "--prompt-ids=a,b")
