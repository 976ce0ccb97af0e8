"""Embeddings and heads in few bits: folders that transformers loads, and every command on a model that has them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import torch
import transformers
from limbeck_runner import LimbeckError
from rank_processes import Ranks
from safetensors.torch import load_file, save_file
from test_compressed_tensors import IDS, logits, read_by_transformers
from test_quantize_command import payload, quantized
from test_quantized_models import OUTPUT_BAR
from training_work import Outcome, Work, saved
from training_work import llama as larger_llama

HEADS = {
    "int8": ["model.embed_tokens int8", "model.lm_head int8"],
    "an embedding alone": ["model.embed_tokens int8"],
    "a head alone": ["model.lm_head int4-sym-g32"],
    "a mix": ["model.layers.** int4-g64", "model.embed_tokens int8", "model.lm_head int4-sym"],
    "everything": ["model.** int8"],
}


def llama(folder: Path, tied: bool) -> Path:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=101, initializer_range=0.1, bos_token_id=1,
                                      eos_token_id=2, tie_word_embeddings=tied)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[bool, Path]:
    return {tied: llama(tmp_path_factory.mktemp("base") / "base", tied) for tied in (False, True)}


def flags_of(rules: list[str]) -> list[str]:
    return [flag for rule in rules for flag in ("--rule", rule)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", HEADS)
def test_others_load_it_and_it_weighs_what_was_planned(limbeck, bases, tmp_path, kind, dtype):
    folder = tmp_path / "packed"
    said = quantized(limbeck, bases[False], folder, "--dtype", dtype, *flags_of(HEADS[kind]))
    assert said["planned_bytes"] == said["bytes"] == payload(folder)
    theirs = logits(read_by_transformers(folder, dtype=torch.float32))
    ours = limbeck.forward(folder, IDS, dtype=torch.float32)["logits"]
    assert parity_measures.largest_error(ours, theirs) < OUTPUT_BAR
    assert parity_measures.largest_error(limbeck.forward(bases[False], IDS)["logits"], ours) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rules", [["model.** int8"], ["model.layers.** int4-sym-g32", "model.embed_tokens int8"]])
def test_a_tied_weight_is_stored_once(limbeck, bases, tmp_path, rules, dtype):
    folder = tmp_path / "packed"
    said = quantized(limbeck, bases[True], folder, "--dtype", dtype, *flags_of(rules))
    assert said["planned_bytes"] == said["bytes"] == payload(folder)
    stored = load_file(folder / "model.safetensors")
    assert stored["model.embed_tokens.weight"].dtype == torch.int8 and "lm_head.weight" not in stored
    assert torch.equal(stored["lm_head.weight_scale"], stored["model.embed_tokens.weight_scale"])
    theirs = read_by_transformers(folder, dtype=torch.float32)
    ours = limbeck.forward(folder, IDS, dtype=torch.float32)["logits"]
    assert parity_measures.largest_error(ours, logits(theirs)) < OUTPUT_BAR
    assert torch.equal(theirs.lm_head.weight, theirs.model.embed_tokens.weight)


def test_a_tied_head_of_floats_is_left_alone(limbeck, bases, tmp_path):
    """Its readers go by classes: a head that config.json's ignore does not name would be packed too."""
    quantized(limbeck, bases[True], tmp_path / "packed", "--quantize", "int8")
    theirs = logits(read_by_transformers(tmp_path / "packed"))
    assert parity_measures.largest_error(limbeck.forward(tmp_path / "packed", IDS)["logits"], theirs) < OUTPUT_BAR


def test_heads_that_differ_from_what_they_are_tied_to_are_refused(limbeck, bases, tmp_path):
    folder = tmp_path / "packed"
    quantized(limbeck, bases[True], folder, "--rule", "model.embed_tokens int8")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight_scale"] = tensors["lm_head.weight_scale"] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LimbeckError, match="(?s)exit 4: .*lm_head.weight_scale differs from model.embed_tokens.weight_scale"):
        limbeck.forward(folder, IDS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("model.embed_tokens int4", "model.embed_tokens is in int4, and transformers loads packed embeddings in int8 alone"),
        ("model.lm_head nf4", "bitsandbytes, which alone has that, keeps heads and embeddings in floats"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_before_writing(limbeck, bases, tmp_path, rule, message):
    with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*{message}"):
        quantized(limbeck, bases[False], tmp_path / "packed", "--rule", rule)
    assert not (tmp_path / "packed").exists()


FAMILIES = ("qwen3", "gemma2", "gemma3", "llama3-tied", "gpt2", "bert", "bert-masked", "distilbert", "distilbert-masked")


@pytest.mark.parametrize("name", FAMILIES)
def test_families_weigh_what_was_planned_and_others_load_them(limbeck, tmp_path, name):
    """Positions, token types, poolers and transforms of heads too; GPT-2's layers are transposed, and stay floats."""
    family = model_zoo.BY_NAME[name]
    base, folder = model_zoo.write_model(family, tmp_path / "base"), tmp_path / "packed"
    said = quantized(limbeck, base, folder, "--rule", "model.embed_tokens int8" if name == "gpt2" else "model.** int8")
    assert said["planned_bytes"] == said["bytes"] == payload(folder)
    inputs = model_zoo.make_inputs(family).tensors
    theirs = type(model_zoo.load(family, base, torch.float32)).from_pretrained(folder, device_map="cpu", attn_implementation="eager")
    with torch.no_grad():
        wanted = theirs.eval()(**inputs)
    ours = limbeck.forward(folder, inputs)
    ours, wanted = (ours["logits"], wanted.logits) if "logits" in ours else (ours["last_hidden_state"], wanted.last_hidden_state)
    kept = inputs["attention_mask"].unsqueeze(-1)
    assert parity_measures.largest_error(ours * kept, wanted * kept) < OUTPUT_BAR


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_tokens_are_generated(limbeck, bases, tmp_path, tied):
    folder = tmp_path / "packed"
    quantized(limbeck, bases[tied], folder, "--rule", "model.** int8")
    theirs = read_by_transformers(folder)
    prompt = [5, 9, 33, 71, 2, 18]
    wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False)[0]
    got = limbeck.generate_from_ids(folder, prompt, new_tokens=24).flatten()
    assert wanted.tolist()[-len(got) :] == got.tolist() or wanted.tolist() == got.tolist()


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("heads"), limbeck)


@pytest.fixture(scope="module")
def packed_teacher(work) -> Path:
    quantized(work.limbeck, work.folder / "teacher", work.folder / "packed-teacher", "--rule", "model.** int8")
    return work.folder / "packed-teacher"


@pytest.fixture(scope="module")
def meant_teacher(work, packed_teacher) -> Path:
    """The float model of what the codes stand for, as transformers reads them."""
    model = copy.deepcopy(work.teacher)
    packed = read_by_transformers(packed_teacher)
    logits(packed)  # the first forward unpacks its weights
    theirs = packed.state_dict()
    model.load_state_dict({name: theirs[name] for name in model.state_dict()})
    return saved(model, work.folder / "meant-teacher")


def test_a_teacher_with_packed_heads_is_distilled_from(work, packed_teacher, meant_teacher):
    steps = {"train__steps": "15 steps"}
    wanted = work.train("meant", teacher__model=meant_teacher, **steps)
    run = work.train("packed", teacher__model=packed_teacher, **steps)
    for name in ("loss", "kd"):
        for ours, theirs in zip(run.series(name), wanted.series(name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), name


def test_ranks_divide_packed_heads_with_the_bits_of_one(work, packed_teacher):
    keys = dict(teacher__model=packed_teacher, train__steps="6 steps", train__accumulate=4, parallel__reduce="tree")
    one = Outcome.of(work.train("one", **keys).folder)
    recipe, run = work.recipe("two", **keys, parallel__zero=3), work.folder / "run-two"
    Ranks(2, recipe, f"--run={run}").end().well()
    assert Outcome.of(run).differences(one) == []


def test_check_shows_and_counts_them(work, packed_teacher):
    recipe, report = work.recipe("shown", teacher__model=packed_teacher), work.folder / "check.json"
    work.limbeck.run("check", str(recipe), "--json", str(report))
    result = json.loads(report.read_text())["result"]
    rows = {row["module"]: row for row in result["modules"]}
    for module in ("teacher.embed_tokens", "teacher.lm_head"):
        assert rows[module]["storage"] == "int8"
        assert rows[module]["bytes"] == 211 * 64 + 211 * 4
    teacher = sum(row["bytes"] for row in result["modules"] if row["module"].startswith("teacher."))
    assert result["memory"]["teacher weights"] == teacher
    assert teacher < 0.3 * sum(p.numel() * 4 for p in work.teacher.parameters())


def test_the_memory_plan_holds_with_them(work):
    """What a head is unpacked into for a loss is part of it."""
    folder = saved(larger_llama(256, 2, seed=3, vocabulary=211), work.folder / "wide-teacher")
    rules = {"precision__rule": "teacher.** int8", "teacher__model": folder}
    run = work.train("planned", **rules, train__steps="3 steps")
    planned, measured = run.result["planned_peak_bytes"], run.result["peak_bytes"]
    print(f"planned {planned}, measured {measured}")
    assert planned == pytest.approx(measured, rel=0.10)


def test_a_packed_student_is_evaluated(work, packed_teacher, meant_teacher):
    """Against the float model of what its codes stand for, as student and as teacher."""
    losses = {}
    for name, folder in (("packed", packed_teacher), ("meant", meant_teacher)):
        recipe = work.recipe(f"eval-{name}", student__model=work.folder / "student", teacher__model=folder)
        report = work.folder / f"eval-{name}.json"
        work.limbeck.run("eval", str(recipe), "--checkpoint", str(folder), "--json", str(report))
        losses[name] = json.loads(report.read_text())["result"]
    ours, theirs = (found.get("values", found) for found in (losses["packed"], losses["meant"]))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_lora_learns_beside_a_packed_head(work, packed_teacher, meant_teacher):
    """The gradient goes through the head's codes to the states alone."""
    keys = dict(adapter__kind="lora", adapter__rank=4, train__steps="10 steps")
    runs = [work.train(f"lora-{folder.name}", student__model=folder, **keys) for folder in (packed_teacher, meant_teacher)]
    for ours, theirs in zip(*(run.series("loss") for run in runs), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert runs[0].series("loss")[-1] < runs[0].series("loss")[0]
