"""Dropout of adapters in `limbeck train`: PEFT's gradients under the same masks, the same bits after a kill, none elsewhere.

Trajectories beside PEFT, the bits on two ranks and in checkpointed layers are in test_adapter_training.py.
"""

from __future__ import annotations

import json
import shutil
import time

import dropout_masks
import parity_measures
import peft
import pytest
import torch
import torch_distiller
from limbeck_runner import run_program
from rank_processes import Ranks
from test_adapter_training import KEYS, RATE, base_of, peft_config, updates_of
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Work, joined_state, newest_checkpoint

DROPPED = KEYS | dict(adapter__dropout=RATE)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("adapter-dropout"), limbeck)


@pytest.mark.parametrize("kind", ["lora-dropout", "dora-dropout", "dora-head-dropout"])
def test_gradients_under_dropout_are_those_of_peft_with_the_same_masks(work, kind):
    """Adam's first moments after one update are a tenth of the gradients."""
    torch.manual_seed(4)
    model = peft.get_peft_model(base_of(work, kind), peft_config(kind))
    start = work.folder / f"first-{kind}"
    model.save_pretrained(start)
    plain = work.train(f"first-plain-{kind}", **(KEYS | dict(adapter__from=start, adapter__dropout=0, train__steps="1 steps")))
    place = dropout_masks.put_on(model)
    settings = torch_distiller.Settings(total_steps=1, clip_norm=None, temperature=2.0)
    wanted = torch_distiller.distil(model, work.teacher, updates_of(work, 1, place), settings, dropout=True)
    run = work.train(f"first-{kind}", **(KEYS | dict(adapter__from=start, train__steps="1 steps", checkpoint__every=1, optim__clip=0)))
    assert run.series("loss") == pytest.approx(wanted.loss, rel=1e-5)
    assert plain.series("loss") != pytest.approx(wanted.loss, rel=1e-3), "dropout changes next to nothing"
    moments = {n.split("first_moment.")[1]: t for n, t in joined_state(newest_checkpoint(run.folder)).items() if "first_moment." in n}
    theirs = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            path, _, part = name.removeprefix("base_model.model.").removeprefix("model.").partition(".lora_")
            theirs[f"student.{path}.default.lora_{part.split('.')[0]}"] = parameter.grad.flatten()
    assert moments.keys() == theirs.keys() and len(moments) >= 2 * 3 * 2
    worst = {name: parity_measures.relative_frobenius(moments[name] * 10, theirs[name]) for name in theirs}
    print(f"{kind}: worst gradient {max(worst.values()):.1e}")
    assert {name: error for name, error in worst.items() if error > 1e-4} == {}


def test_dropout_goes_on_after_a_kill_with_the_same_bits(work):
    keys = DROPPED | dict(checkpoint__every=1, train__accumulate=2, data__batch_size=2, parallel__reduce="tree", train__steps="40 steps")
    whole, run = work.train("dropout-whole", threads=1, **keys), work.folder / "dropout-killed"
    with Ranks(2, whole.recipe, f"--run={run}") as ranks:
        lines = lambda: (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""  # noqa: E731
        while lines().count('"phase":"checkpoint"') < 3:
            assert ranks.processes[0].poll() is None, ranks.end().errors
            time.sleep(0.002)
        ranks.signal(0), ranks.signal(1)
    assert lines().count('"phase":"train"') < 40
    ended = Ranks(1, whole.recipe, f"--run={run}").end().well()
    assert "resumed from" in ended.errors[0]
    assert Outcome.of(run).differences(Outcome.of(whole.folder)) == []


@pytest.fixture(scope="module")
def begun(work):
    """A run whose adapter changes a lot."""
    return work.train("dropout-begun", **(DROPPED | dict(optim__learning_rate=3e-2, train__steps="8 steps")))


def test_rows_drop_the_same_in_other_micro_batches(work, begun):
    """The sums of another split round otherwise; other masks show in the third digit."""
    keys = KEYS | dict(adapter__kind="none", adapter__from=begun.folder / "final", train__steps="3 steps")

    def losses(name: str, *flags: str, rows: int) -> list[float]:
        return work.train(f"split-{name}", *flags, **keys, data__batch_size=rows, train__accumulate=8 // rows).series("loss")

    whole = losses("8", rows=8)
    for rows in (4, 1):
        assert losses(str(rows), rows=rows) == pytest.approx(whole, rel=1e-5), rows
    other = losses("seed", "--seed=1", rows=8)
    assert all(abs(a - b) > 1e-3 * a for a, b in zip(whole, other, strict=True)), (whole, other)


def test_evaluation_and_export_drop_nothing(work, limbeck):
    run = work.train("dropout-evaluated", **(DROPPED | dict(eval__every=15, optim__learning_rate=1e-2)))
    plain = work.recipe("dropout-without", **KEYS)
    config = json.loads((run.folder / "final" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == RATE
    results = []
    for recipe in (run.recipe, plain):
        out = work.folder / "dropout-again.json"
        limbeck.run("eval", str(recipe), f"--checkpoint={run.folder / 'final'}", f"--json={out}")
        results.append(json.loads(out.read_text())["result"])
    last = [line for line in run.lines if line["phase"] == "eval"][-1]
    assert {"loss", "perplexity", "kl"} <= last.keys()
    for again in results:
        assert {key for key in last if isinstance(last[key], float) and key in again and again[key] != last[key]} == set()
    inputs = torch.arange(24).view(2, 12) % VOCABULARY
    model = peft.PeftModel.from_pretrained(base_of(work, "lora"), run.folder / "final").eval()
    assert model.peft_config["default"].lora_dropout == RATE
    ours = limbeck.forward(work.folder / "student", {"input_ids": inputs}, adapter=run.folder / "final")["logits"]
    assert parity_measures.largest_error(ours, model(input_ids=inputs).logits.detach()) <= 1e-5


def test_a_folder_brings_its_dropout_and_the_recipe_may_replace_it(work, begun):
    keys = KEYS | dict(adapter__kind="none", adapter__from=begun.folder / "final", train__steps="3 steps")
    said, losses, rates = {}, {}, {}
    for name, own in dict(folder={}, same=dict(adapter__dropout=RATE), other=dict(adapter__dropout=0.1), none=dict(adapter__dropout=0)).items():
        recipe, run = work.recipe(f"dropout-{name}", **(keys | own)), work.folder / f"run-dropout-{name}"
        said[name] = Ranks(1, recipe, f"--run={run}").end().well().errors[0]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if line["phase"] == "train"]
        rates[name] = json.loads((run / "final" / "adapter_config.json").read_text())["lora_dropout"]
    assert rates == {"folder": RATE, "same": RATE, "other": 0.1, "none": 0}
    assert losses["folder"] == losses["same"] and len({tuple(series) for series in losses.values()}) == 3
    for name, text in said.items():
        assert ("in place of lora_dropout = 0.3 of " in text) == (name in ("other", "none")), text
    assert f"adapter.dropout = 0.1 ({work.folder}/dropout-other.ini:" in said["other"], said["other"]
    checked = run_program("check", work.folder / "dropout-other.ini")
    assert "adapter.dropout = 0.1 (" in checked.stderr, checked.stderr


def test_a_run_is_not_resumed_with_another_dropout_of_its_folder(work, begun):
    folder, run = work.folder / "dropout-moved", work.folder / "run-dropout-moved"
    shutil.copytree(begun.folder / "final", folder)
    recipe = work.recipe("dropout-moved", **(KEYS | dict(adapter__kind="none", adapter__from=folder, train__steps="3 steps", checkpoint__every=1)))
    Ranks(1, recipe, f"--run={run}").end().well()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.1}))
    ended = Ranks(1, recipe, f"--run={run}").end()
    assert ended.codes == [4] and "adapter.dropout was 0.3, is 0.1" in ended.errors[0], ended.errors[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_check_rehearses_dropout_and_keeps_no_mask(work, limbeck, dtype):
    kept = {}
    for rate in (0, RATE):
        out = work.folder / "dropout-check.json"
        recipe = work.recipe("dropout-check", **(KEYS | dict(adapter__dropout=rate, student__dtype=dtype, teacher__dtype=dtype)))
        limbeck.run("check", str(recipe), f"--json={out}")
        result = json.loads(out.read_text())["result"]
        kept[rate] = result["memory"]["activations kept for backward"], result["operators"]
    assert kept[RATE][1] > kept[0][1]
    assert kept[RATE][0] - kept[0][0] == 8 * ROWS * LENGTH  # the tokens' numbers alone
