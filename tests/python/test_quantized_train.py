"""Runs on quantized teachers and students: losses, what moves, same bits, memory plan, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import test_adapter_training
import torch
import torch_distiller
import transformers
from limbeck_runner import LimbeckError
from rank_processes import Ranks
from safetensors.torch import load_file
from test_quantized_models import dequantize, quantized_weights
from training_work import LENGTH, ROWS, Outcome, Work, checkpoints, joined_state, llama, newest_checkpoint, saved

import token_rows


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("quantized"), limbeck)


def test_a_quantized_teacher_is_distilled_from(work):
    """The losses are those of a float teacher whose weights are what the codes stand for."""
    folder = work.folder / "dequantized"
    dequantize(copy.deepcopy(work.teacher), "nf4").save_pretrained(folder)
    steps = {"train__steps": "20 steps"}
    wanted = work.train("dequantized", teacher__model=folder, **steps)
    run = work.train("quantized", teacher__quantize="nf4", **steps)
    for name in ("loss", "kd"):
        for ours, theirs in zip(run.series(name), wanted.series(name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), name


def test_a_quantized_student_trains_what_is_not_frozen(work):
    """Embeddings, norms and head move, the codes stay; what is saved is a float model that gives the same logits."""
    run = work.train("student", student__quantize="nf4", teacher__quantize="int8", train__steps="40 steps")
    assert run.series("loss")[-1] < run.series("loss")[0]
    before = transformers.AutoModelForCausalLM.from_pretrained(work.folder / "student", dtype=torch.float32)
    codes = {n: p.detach().clone() for n, p in quantized_weights(dequantize(before, "nf4")).items()}
    after = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "final", dtype=torch.float32)
    packed = quantized_weights(after)
    assert all(torch.equal(packed[name], codes[name]) for name in codes)
    moved = [n for n, p in after.named_parameters() if n not in packed and not torch.equal(p, before.get_parameter(n))]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(moved)


def test_check_shows_what_is_stored(work):
    recipe = work.recipe("shown", student__quantize="nf4-double", student__dtype="bfloat16")
    report = work.folder / "check.json"
    work.limbeck.run("check", str(recipe), "--json", str(report))
    result = json.loads(report.read_text())["result"]
    rows = {row["module"]: row for row in result["modules"]}
    up, norm = rows["student.layers.*.mlp.up_proj"], rows["student.norm"]
    assert (up["storage"], up["in"], up["out"], norm["storage"]) == ("nf4-double", "bfloat16", "bfloat16", "bfloat16")
    blocks = 32 * 64 // 64
    assert up["parameters"] == 2 * 32 * 64 and up["bytes"] == 2 * (32 * 64 // 2 + blocks + 4 + 4)
    assert "recipe" in up["from"] or "shown.ini" in up["from"]
    student = sum(row["bytes"] for row in result["modules"] if row["module"].startswith("student."))
    assert result["memory"]["student weights"] == student


@pytest.mark.parametrize("command", ["check", "train"])
def test_float16_activations_on_a_quantized_student_are_refused(work, command):
    recipe = work.recipe("refused", student__quantize="nf4", student__dtype="float16")
    flags = ["--run", str(work.folder / "never")] if command == "train" else []
    with pytest.raises(LimbeckError) as refused:
        work.limbeck.run(command, str(recipe), *flags)
    text = str(refused.value)
    assert text.startswith("exit 2: ") and "refused.ini" in text
    for part in ("gradients would come through float16", "student.dtype=bfloat16", "student.quantize=none"):
        assert part in text, text
    assert not (work.folder / "never").exists()


RANKED = {
    "student__quantize": "nf4",
    "teacher__quantize": "int4",
    "train__steps": "12 steps",
    "train__accumulate": 4,
    "parallel__reduce": "tree",
}


def test_a_quantized_run_keeps_its_bits_on_any_threads_and_ranks(work):
    """ZeRO-3 divides what trains; every rank has the codes whole."""
    outcomes = [Outcome.of(work.train(f"threads-{threads}", threads=threads, **RANKED).folder) for threads in (1, 2)]
    for ranks, zero in ((2, 0), (2, 3)):
        name = f"ranks-{ranks}-{zero}"
        recipe, run = work.recipe(name, **RANKED, parallel__zero=zero), work.folder / f"run-{name}"
        Ranks(ranks, recipe, f"--run={run}").end().well()
        outcomes.append(Outcome.of(run))
    for other in outcomes[1:]:
        assert other.differences(outcomes[0]) == []


def test_a_quantized_run_resumes_with_the_same_bits(work):
    recipe = work.recipe("resumed", **RANKED, checkpoint__every=4, checkpoint__keep=3, train__checkpoint_activations="true")
    whole, parts = work.folder / "run-whole", work.folder / "run-parts"
    Ranks(1, recipe, f"--run={whole}").end().well()
    shutil.copytree(whole, parts)
    shutil.rmtree(checkpoints(parts)[-1])
    ended = Ranks(2, recipe, f"--run={parts}", "--parallel.zero=3").end().well()
    assert "8 of 12 steps are done" in ended.errors[0], ended.errors
    assert Outcome.of(parts).differences(Outcome.of(whole)) == []
    other = Ranks(1, recipe, f"--run={parts}", "--student.quantize=int8").end()
    assert other.codes[0] != 0 and "student.quantize was nf4, is int8" in other.errors[0], other.errors


@pytest.mark.parametrize(("form", "bar"), [("nf4", 0), ("int8", 1e-6), ("int4", 1e-6), ("nf4-double", 1e-3)])
def test_what_a_run_saves_evaluates_to_the_loss_of_its_last_evaluation(work, form, bar):
    """The saved floats quantize to the same codes: nf4 to the bit, int8 and int4 but for a rounding of the scale; of
    nf4-double the 8-bit scales are rounded once more."""
    keys = {"student__quantize": form, "train__steps": "10 steps", "eval__every": 10}
    run = work.train(f"saved-{form}", **keys)
    report = work.folder / "eval.json"
    work.limbeck.run("eval", str(run.recipe), "--checkpoint", str(run.folder / "final"), "--json", str(report))
    text = json.loads(report.read_text())["result"]
    wanted, got = run.series("loss", "eval")[-1], text["loss"] if "loss" in text else text["values"]["loss"]
    print(f"{form}: evaluated in training {wanted!r}, after saving {got!r}")
    assert abs(got - wanted) <= bar * wanted


@pytest.mark.parametrize("form", ["none", "nf4"])
def test_the_memory_plan_holds_with_a_quantized_teacher(work, form):
    folder = work.folder / "large-teacher"
    if not folder.exists():
        saved(llama(256, 4, seed=3), folder)
    run = work.train(f"planned-{form}", teacher__model=folder, teacher__quantize=form, train__steps="3 steps")
    planned, measured = run.result["planned_peak_bytes"], run.result["peak_bytes"]
    print(f"teacher {form}: planned {planned}, measured {measured}")
    assert planned == pytest.approx(measured, rel=0.10)


ADAPTER = test_adapter_training.KEYS | {"student__quantize": "nf4"}


@pytest.mark.parametrize(("kind", "form"), [("lora", "nf4"), ("dora", "nf4"), ("ia3", "nf4"), ("lora", "int8"), ("lora", "nf4-double"),
                                            ("experts", "int4-sym-g32")])  # fmt: skip
def test_an_adapter_on_codes_trains_as_peft_does_on_the_dequantized_model(work, kind, form):
    steps = test_adapter_training.STEPS
    torch.manual_seed(4)
    model = peft.get_peft_model(dequantize(test_adapter_training.base_of(work, kind), form), test_adapter_training.peft_config(kind))
    start = work.folder / f"start-{kind}-{form}"
    model.save_pretrained(start)
    batches = token_rows.padded_batches(work.documents, ROWS, LENGTH)
    settings = torch_distiller.Settings(learning_rate=1e-2, total_steps=steps, warmup_steps=5, weight_decay=0.01,
                                        temperature=2.0)  # fmt: skip
    wanted = torch_distiller.distil(model, work.teacher, [[batches[i % len(batches)]] for i in range(steps)], settings)
    keys = ADAPTER | test_adapter_training.keys_of(work, kind) | dict(student__quantize=form, adapter__from=start, adapter__kind="none", optim__learning_rate=1e-2,
                          train__steps=f"{steps} steps")  # fmt: skip
    run = work.train(f"adapter-{kind}-{form}", **keys)
    for name, series in (("loss", wanted.loss), ("kd", wanted.kd), ("ce", wanted.ce)):
        worst = max(abs(a - b) / abs(b) for a, b in zip(run.series(name), series, strict=True))
        print(f"{kind} on {form}, {name}: worst relative difference {worst:.2e}")
        assert worst < 1e-4, (name, worst)
    assert run.series("grad_norm") == pytest.approx(wanted.gradient_norm, rel=1e-3)
    assert run.series("loss")[-1] < 0.99 * run.series("loss")[0]


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "npt"])
def test_an_adapter_on_codes_is_float32_beside_bfloat16_activations(work, limbeck, kind):
    """The first row of the dtype table: created, trained, resumed, exported and loaded again."""
    keys = ADAPTER | dict(adapter__kind=kind, student__dtype="bfloat16", train__steps="6 steps", checkpoint__every=3)
    name, report = f"beside-{kind}", work.folder / f"beside-{kind}.check.json"
    recipe = work.recipe(name, **keys)
    limbeck.run("check", str(recipe), f"--json={report}")
    checked = json.loads(report.read_text())["result"]
    rows = [row for row in checked["modules"] if row["role"] == "adapter"]
    assert rows and all(
        (row["storage"], row["in"], row["compute"], row["out"]) == ("float32", "bfloat16", "float32", "bfloat16") for row in rows
    )
    casts = {(c["from"], c["to"]) for c in checked["casts"] if ".default (input)" in c["place"]}
    assert casts == {("bfloat16", "float32"), ("float32", "bfloat16")} or casts == {("bfloat16", "float32")}
    run = work.train(name, **keys)
    final = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert not [key for key in joined_state(newest_checkpoint(run.folder)) if "master" in key]
    again = work.folder / f"run-{name}-again"
    shutil.copytree(run.folder, again)
    shutil.rmtree(newest_checkpoint(again))
    Ranks(1, recipe, f"--run={again}").end().well()
    resumed = load_file(again / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], final[key]) for key in final)
    inputs = {"input_ids": torch.arange(24).view(2, 12)}
    base = work.folder / "student"
    with_adapter = limbeck.forward(base, inputs, dtype=torch.bfloat16, quantize="nf4", adapter=run.folder / "final")["logits"]
    without = limbeck.forward(base, inputs, dtype=torch.bfloat16, quantize="nf4")["logits"]
    assert with_adapter.dtype == torch.bfloat16 and not torch.equal(with_adapter, without)


FLAGS = {
    "--use_quantization": ["--use_quantization", "--use_fp16"],
    "--mixed_precision": ["--use_quantization=true", "--mixed_precision=true"],
    "both": ["--use_fp16", "--mixed_precision", "--use_quantization"],
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("case", FLAGS)
def test_the_flags_of_other_trainers_are_refused_before_a_weight_is_read(work, tmp_path, command, case):
    """S1's use_quantization with use_fp16 or mixed_precision: both legal alternatives are named, by what was typed."""
    keys = {key: value for key, value in ADAPTER.items() if key not in ("student__quantize", "student__dtype")}
    recipe = work.recipe(f"flags-{command}-{case}", **keys)
    base = tmp_path / "student"
    shutil.copytree(work.folder / "student", base)
    (base / "model.safetensors").write_bytes(b"no weights at all")
    flags = ["--run", str(tmp_path / "never")] if command == "train" else []
    with pytest.raises(LimbeckError) as refused:
        work.limbeck.run(command, str(recipe), f"--student.model={base}", *FLAGS[case], *flags)
    text = str(refused.value)
    assert text.startswith("exit 2: "), text
    for part in ("nf4 weights (--use_quantization)", "gradients would come through float16", "student.dtype=bfloat16",
                 "student.quantize=none"):  # fmt: skip
        assert part in text, text
    assert not (tmp_path / "never").exists()


def test_the_flags_of_other_trainers_alone_are_the_options_they_stand_for(work):
    """use_quantization is nf4, use_fp16 is float16 weights, num_samples counts rows: 4 updates of 2 x 2 rows and a rest."""
    keys = {key: value for key, value in ADAPTER.items() if key not in ("student__quantize", "train__steps")}
    quantized = work.train("flag-nf4", "--use_quantization", "--num_samples=17", "--data.batch_size=2", "--train.accumulate=2", **keys)
    own = work.train("own-nf4", "--student.quantize=nf4", "--train.steps=5 steps", "--data.batch_size=2", "--train.accumulate=2", **keys)
    assert len(quantized.series("loss")) == 5 and quantized.series("loss") == own.series("loss")
    half = {key: value for key, value in keys.items() if key != "student__dtype"}
    assert work.train("flag-half", "--use_fp16", "--num_samples=8", "--data.batch_size=4", **half).series("loss_scale")[0] > 1


def test_a_teacher_that_is_the_quantized_base_agrees_with_an_adapter_that_does_nothing(work):
    """teacher.kind = self shares the codes: at the first step of LoRA, whose B is zero, there is nothing to learn."""
    run = work.train("self", **(ADAPTER | dict(teacher__model=None, teacher__kind="self", objective__alpha=1, train__steps="1 steps")))
    assert run.series("kd")[0] == pytest.approx(0, abs=1e-6)


def test_an_adapter_on_codes_beside_float16_activations_is_refused(work):
    recipe = work.recipe("refused-adapter", **(ADAPTER | dict(student__dtype="float16")))
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*nf4 weights .*student.dtype=bfloat16.*student.quantize=none"):
        work.limbeck.run("check", str(recipe))
