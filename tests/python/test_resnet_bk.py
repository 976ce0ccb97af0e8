"""ResNet-BK beyond what the zoo's tests hold of every family (values, gradients, packing, generation, saving): training
against plain PyTorch, who sees whom to the bit, threads, ranks, kills, adapters, codes, and both ends of a distillation."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import test_crash
import torch
import transformers_reference as reference
from abuse_stock import sealed_manifest
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError
from rank_processes import Ranks
from resnet_bk_reference import ResNetBKConfig, ResNetBKForCausalLM, ResNetBKForMaskedLM
from safetensors.torch import load_file
from test_packing import WIDTH, alone, make_documents, pack
from test_quantize_command import payload, quantized
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Run, Work, newest_checkpoint, saved

import token_rows
import torch_distiller

BK, MASKED = model_zoo.BY_NAME["resnet-bk"], model_zoo.BY_NAME["resnet-bk-masked"]
BASE = REPOSITORY / "recipes" / "models" / "resnet_bk_base"


def resnet_bk(width: int, layers: int, seed: int, **more) -> ResNetBKForCausalLM:
    torch.manual_seed(seed)
    options = dict(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, intermediate_size=2 * width,
                   max_position_embeddings=64, eos_token_id=2, initializer_range=0.15, bk_heads=2, bk_z=0.5)  # fmt: skip
    return ResNetBKForCausalLM(ResNetBKConfig(**(options | more))).float()


class BkWork(Work):
    """Work with a dense teacher and a student with experts; "llama" is Work's own student."""

    def __init__(self, folder: Path, limbeck: Limbeck):
        super().__init__(folder, limbeck)
        (folder / "student").rename(folder / "llama")
        self.teacher, self.student = resnet_bk(48, 3, seed=1), resnet_bk(32, 2, seed=2, num_experts=4)
        for name in ("teacher", "student"):
            saved(getattr(self, name), folder / name)

    def short(self, name: str, *flags: str, threads: int = 1, **keys) -> Run:
        few = dict(train__steps="6 steps", eval__every=3, checkpoint__every=3, optim__warmup="0 steps",
                   optim__router_learning_rate=1e-3)  # fmt: skip
        return self.train(name, *flags, threads=threads, **(few | keys))


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> BkWork:
    return BkWork(tmp_path_factory.mktemp("resnet-bk"), limbeck)


@pytest.fixture(scope="module")
def trained(work) -> Run:
    return work.short("plain")


def test_training_equals_the_plain_torch_loop(work, trained):
    batches = token_rows.padded_batches(work.documents, ROWS, LENGTH)[:6]
    settings = torch_distiller.Settings(learning_rate=1e-3, total_steps=6, weight_decay=0.01, temperature=2.0)
    student = resnet_bk(32, 2, seed=2, num_experts=4)
    wanted = torch_distiller.distil(student, work.teacher, [[batch] for batch in batches], settings)
    for name in ("loss", "kd", "ce"):
        assert trained.series(name) == pytest.approx(getattr(wanted, name), rel=1e-4), name
    assert trained.series("grad_norm") == pytest.approx(wanted.gradient_norm, rel=1e-3)
    final = load_file(trained.folder / "final" / "model.safetensors")
    moved = {name: parameter.detach() for name, parameter in student.named_parameters()}
    assert final.keys() == moved.keys()
    scale = resnet_bk(32, 2, seed=2, num_experts=4).state_dict()
    for name, tensor in final.items():
        change = (moved[name] - scale[name]).norm()
        assert change > 0 and (tensor - moved[name]).norm() < 0.02 * change, name


@pytest.mark.parametrize("name, changes", [
    ("two-threads", dict(threads=2)),
    ("layers-run-again", dict(train__checkpoint_activations="yes")),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_threads_and_checkpointing_keep_the_bits(work, trained, name, changes):
    assert Outcome.of(work.short(name, **changes).folder).differences(Outcome.of(trained.folder)) == []


def test_a_wide_update_has_the_same_bits_on_one_thread_and_two(work):
    """Of 4,096 tokens: products and sums that threads would divide along the tokens."""
    keys = dict(teacher__model=None, objective__alpha=0, student__init="random", data__packing="packed", data__batch_size=64,
                data__sequence_length=64, train__steps="2 steps", eval__every=2, eval__batches=1)  # fmt: skip
    runs = [work.short(f"wide-{threads}", threads=threads, **keys) for threads in (1, 2)]
    assert Outcome.of(runs[0].folder).differences(Outcome.of(runs[1].folder)) == []


def test_a_resumed_run_has_the_bits_of_one_that_went_through(work, trained):
    stopped = work.folder / "run-stopped"
    shutil.copytree(trained.folder, stopped)
    shutil.rmtree(newest_checkpoint(stopped))
    work.limbeck.run("train", str(trained.recipe), f"--run={stopped}")
    assert Outcome.of(stopped).differences(Outcome.of(trained.folder)) == []


@pytest.mark.parametrize("activations, ranks", [("float", 1), ("int8", 2)])
def test_kills_cost_only_the_steps_since_the_last_checkpoint(work, activations, ranks):
    """As test_crash.py has it, of this family with its experts: some seconds."""
    keys = test_crash.KEYS | dict(student__bk_activations=activations, parallel__reduce="tree")
    whole, killed = (work.folder / f"run-{activations}-{name}" for name in ("whole", "killed"))
    Ranks(1, work.recipe(f"{activations}-whole", **keys), f"--run={whole}").end().well()
    recipe = work.recipe(f"{activations}-killed", **keys, parallel__zero=3)
    kills, _, resumed_from = test_crash.killed_run(recipe, killed, ranks, 3, random.Random("resnet_bk"))
    assert kills > 0 and resumed_from
    assert Outcome.of(killed).differences(Outcome.of(whole)) == []


def on_ranks(work: BkWork, name: str, ranks: int, **keys) -> Outcome:
    sums = dict(train__steps="3 steps", train__accumulate=4, data__batch_size=2, eval__every=3, parallel__reduce="tree")
    recipe, run = work.recipe(name, **(sums | keys)), work.folder / f"run-{name}"
    Ranks(ranks, recipe, f"--run={run}").end().well()
    return Outcome.of(run)


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_two_ranks_have_the_bits_of_one_under_every_zero(work, activations):
    keys = dict(student__bk_activations=activations)
    one = on_ranks(work, f"{activations}-rank", 1, **keys)
    for zero in (1, 2, 3):
        assert on_ranks(work, f"{activations}-ranks-{zero}", 2, parallel__zero=zero, **keys).differences(one) == [], zero


def test_evaluation_alone_repeats_the_last_one_of_training(work, trained):
    result = work.folder / "eval.json"
    work.limbeck.run("eval", str(trained.recipe), f"--run={trained.folder}", "--json", str(result))
    again, last = json.loads(result.read_text())["result"], [line for line in trained.lines if line["phase"] == "eval"][-1]
    assert {name: again[name] for name in ("loss", "kd", "ce", "perplexity")} == {name: last[name] for name in ("loss", "kd", "ce", "perplexity")}


def test_packed_training_starts_the_recurrence_anew_at_each_document(work):
    """One update of packed rows has the loss of the same documents alone, a row each."""
    keys = dict(teacher__model=None, objective__alpha=0, train__steps="1 steps", data__packing="packed", data__batch_size=4, eval__every=0)
    got = work.short("packed", **keys).lines[0]
    assert got["targets"] > 60
    mixed = work.short("mixed", **(keys | dict(student__model=saved(resnet_bk(32, 2, seed=2, num_experts=4, bk_z=0.1), work.folder / "near")))).lines[0]
    assert abs(mixed["loss"] - got["loss"]) > 1e-4  # the mixer has a say in it


@pytest.mark.parametrize("family", [BK, MASKED], ids=lambda family: family.name)
def test_packed_documents_have_the_bits_that_each_has_alone(limbeck, tmp_path, family):
    folder = model_zoo.write_model(family, tmp_path)
    documents = make_documents()
    packed, single = pack(documents, WIDTH), alone(documents)
    together = limbeck.forward(folder, packed)["logits"][packed["document_ids"] > 0]
    assert torch.equal(together, limbeck.forward(folder, single.tensors)["logits"][single.valid])


@pytest.mark.parametrize("family", [BK, MASKED], ids=lambda family: family.name)
def test_float64_equals_dense_complex128_inverses(limbeck, tmp_path, family):
    folder, inputs = model_zoo.write_model(family, tmp_path), model_zoo.make_inputs(family)
    cotangent = model_zoo.make_cotangent(inputs, (*inputs.valid.shape, model_zoo.VOCABULARY)).double()
    wanted = reference.forward(model_zoo.load(family, folder, torch.float64), family, inputs, cotangent=cotangent)
    got = limbeck.forward(folder, {**inputs.tensors, "output_gradient": cotangent}, dtype=torch.float64, gradients=True)
    pick = parity_measures.compared
    assert parity_measures.largest_error(pick(family, inputs, got["logits"]), pick(family, inputs, wanted["logits"])) < 1e-13
    assert max(parity_measures.gradient_errors(got, wanted).values()) < 1e-12


def test_a_later_token_changes_no_earlier_logit_and_in_both_directions_it_does(limbeck, tmp_path):
    for family in (BK, MASKED):
        folder = model_zoo.write_model(family, tmp_path / family.name)
        ids = model_zoo.make_inputs(family, batch=1).tensors["input_ids"]
        changed = ids.clone()
        changed[0, 20] += 1
        before, after = (limbeck.forward(folder, {"input_ids": x})["logits"][0] for x in (ids, changed))
        if family is BK:
            assert torch.equal(before[:20], after[:20]) and not torch.equal(before[20:], after[20:])
        else:
            assert all(not torch.equal(before[t], after[t]) for t in range(14, 28))


def test_a_bidirectional_one_writes_no_text(limbeck, tmp_path):
    folder = model_zoo.write_model(MASKED, tmp_path)
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*resnet_bk fills in masked tokens from both sides and writes no text"):
        limbeck.generate(folder, torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.long), new_tokens=2)


def test_a_bidirectional_one_learns_what_is_masked(work):
    data = token_rows.write(work.folder / "masked-data", work.documents, VOCABULARY)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"] |= {"mask": 4, "special": "0-4", "continuing": "9"}
    sealed_manifest(data / "manifest.json", manifest)
    torch.manual_seed(3)
    student = saved(ResNetBKForMaskedLM(resnet_bk(32, 2, seed=3, num_experts=4).config).float(), work.folder / "masked-student")
    keys = dict(teacher__model=None, objective__alpha=0, student__model=student, data__train=data, data__validation=data,
                data__masking="whole_word", data__batch_size=16, train__steps="40 steps", optim__learning_rate=1e-2, eval__every=20)  # fmt: skip
    losses = work.short("masked", **keys).series("loss", "eval")
    assert losses[1] < losses[0] - 0.1


def test_lora_on_its_products_trains_and_merges(work):
    targets = "v_proj|o_proj|gate|up_proj|down_proj"
    run = work.short("lora", adapter__kind="lora", adapter__rank=2, adapter__target=targets, optim__learning_rate=1e-2)
    assert run.series("loss")[-1] < run.series("loss")[0]
    names = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert {name.split(".layers.0.")[1].rsplit(".lora_", 1)[0] for name in names if ".layers.0." in name} >= {"bk.v_proj", "bk.o_proj", "mlp.gate"}
    merged, batch = work.folder / "merged", token_rows.padded_batches(work.documents, ROWS, LENGTH)[0]
    inputs = {"input_ids": batch["input_ids"]}
    work.limbeck.run("merge", f"--model={work.folder / 'student'}", f"--adapter={run.folder / 'final'}", f"--output={merged}")
    beside = work.limbeck.forward(work.folder / "student", inputs, adapter=run.folder / "final")["logits"]
    alone_, base = work.limbeck.forward(merged, inputs)["logits"], work.limbeck.forward(work.folder / "student", inputs)["logits"]
    assert (beside - alone_).abs().max() < 1e-5 * beside.abs().max() < (beside - base).abs().max()


def test_it_teaches_and_learns_beside_another_family(work):
    for name, keys in {
        "llama-learns": dict(student__model=work.folder / "llama", objective__feature_weight=0.1),
        "llama-teaches": dict(teacher__model=work.folder / "llama", objective__feature_weight=0.1, objective__divergence="reverse_kl"),
    }.items():
        run = work.short(name, **keys)
        assert run.series("loss")[-1] < run.series("loss")[0], name
    said = work.recipe("attention", objective__attention_weight=1)
    with pytest.raises(LimbeckError, match="(?s)mixes its tokens by bk, which has no attention maps to transfer"):
        work.limbeck.run("check", str(said))


def test_formats_go_by_its_roles_and_codes_are_reloaded_with_the_same_bits(limbeck, tmp_path):
    base = model_zoo.write_model(BK, tmp_path / "base")
    said = quantized(limbeck, base, tmp_path / "static", "--policy=static", "--tag", "expert int8", "--tag", "embedding int8")
    formats = {module: entry["format"] for module, entry in said["modules"].items()}
    assert {formats[f"layers.{i}.bk.{name}"] for i in range(3) for name in ("v_proj", "o_proj")} == {"int8"}
    assert {formats["embed_tokens"], formats["embed_positions"], formats["layers.0.mlp.experts"]} == {"int8"} and formats["lm_head"] == "float"
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "static")
    said = quantized(limbeck, base, tmp_path / "tagged", "--policy=static", "--tag", "expert int8", "--tag", "bk_core float")
    assert {entry["format"] for module, entry in said["modules"].items() if ".bk." in module} == {"float"}
    rules = ["--quantize=int8", "--rule", "model.layers.*.bk.* int8", "--rule", "model.lm_head int8"]
    said = quantized(limbeck, base, tmp_path / "rules", *rules)
    inputs = model_zoo.make_inputs(BK).tensors
    rounded = limbeck.forward(tmp_path / "rules", inputs)["logits"]
    plain = limbeck.forward(base, inputs)["logits"]
    error = parity_measures.relative_frobenius(rounded, plain)
    assert 0 < error < 0.1, error
    assert torch.equal(rounded, limbeck.forward(base, inputs, quantize="int8")["logits"]) is False  # which packs experts alone


INT8 = dict(bk_heads=5, bk_activations="int8")


@pytest.mark.parametrize("heads", [5, 1])
@pytest.mark.parametrize("family", [BK, MASKED], ids=lambda family: family.name)
def test_int8_activations_have_the_values_and_gradients_of_straight_through_torch(limbeck, tmp_path, family, heads):
    """Of one layer, where both programs have the same v to a few roundings, and of rows that keep off the middle between two
    codes by more than those: each program would take another code there."""
    folder = model_zoo.write_model(family, tmp_path / "int8", num_hidden_layers=1, bk_z=0.7, **(INT8 | dict(bk_heads=heads)))
    model, float_model = (model_zoo.load(family, folder, torch.float32) for _ in range(2))
    float_model.config.bk_activations = "float"
    for seed in range(60):
        inputs = model_zoo.make_inputs(family, seed=seed, batch=1, length=16)
        cotangent = model_zoo.make_cotangent(inputs, (*inputs.valid.shape, model_zoo.VOCABULARY))
        wanted = reference.forward(model, family, inputs, cotangent=cotangent)
        if model.model.layers[0].bk.core.nearest_tie > 5e-4:
            break
    assert model.model.layers[0].bk.core.nearest_tie > 5e-4
    got = limbeck.forward(folder, {**inputs.tensors, "output_gradient": cotangent}, gradients=True)
    assert parity_measures.largest_error(got["logits"], wanted["logits"]) < 1e-5
    errors = parity_measures.gradient_errors(got, wanted)
    assert max(errors.values()) < 1e-5, errors
    floats = reference.forward(float_model, family, inputs, cotangent=cotangent)
    assert parity_measures.largest_error(got["logits"], floats["logits"]) > 1e-4  # the codes have a say in it


@pytest.mark.parametrize("heads", [5, 1])
def test_int8_activations_keep_documents_futures_and_caches_apart(limbeck, tmp_path, heads):
    folder = model_zoo.write_model(BK, tmp_path, **(INT8 | dict(bk_heads=heads)))
    documents = make_documents()
    packed, single = pack(documents, WIDTH), alone(documents)
    together = limbeck.forward(folder, packed)["logits"][packed["document_ids"] > 0]
    assert torch.equal(together, limbeck.forward(folder, single.tensors)["logits"][single.valid])
    ids = model_zoo.make_inputs(BK, batch=1).tensors["input_ids"]
    changed = ids.clone()
    changed[0, 20] += 1
    before, after = (limbeck.forward(folder, {"input_ids": x})["logits"][0] for x in (ids, changed))
    assert torch.equal(before[:20], after[:20]) and not torch.equal(before[20:], after[20:])
    mask = torch.ones_like(ids[:, :12])
    cached, uncached = (limbeck.generate(folder, ids[:, :12], mask, "--ignore-eos", *flags, new_tokens=64) for flags in ((), ("--no-cache",)))
    assert cached.shape[-1] == 12 + 64 and torch.equal(cached, uncached)


def test_int8_activations_train_save_evaluate_and_go_on(work):
    keys = dict(student__bk_activations="int8", objective__alpha=1)
    run = work.short("int8", **keys)
    assert Outcome.of(work.short("int8-threads", threads=2, **keys).folder).differences(Outcome.of(run.folder)) == []
    assert Outcome.of(work.short("int8-not", objective__alpha=1).folder).differences(Outcome.of(run.folder)) != []
    stopped = work.folder / "run-int8-stopped"
    shutil.copytree(run.folder, stopped)
    shutil.rmtree(newest_checkpoint(stopped))
    work.limbeck.run("train", str(run.recipe), f"--run={stopped}")
    assert Outcome.of(stopped).differences(Outcome.of(run.folder)) == []
    result = work.folder / "int8-eval.json"
    work.limbeck.run("eval", str(run.recipe), f"--run={run.folder}", "--json", str(result))
    again, last = json.loads(result.read_text())["result"], [line for line in run.lines if line["phase"] == "eval"][-1]
    assert {name: again[name] for name in ("loss", "kd", "perplexity")} == {name: last[name] for name in ("loss", "kd", "perplexity")}
    # The folder says it by itself, and a command can say otherwise.
    final, inputs = run.folder / "final", {"input_ids": torch.tensor([work.documents[0][:12]])}
    assert json.loads((final / "config.json").read_text())["bk_activations"] == "int8"
    own, floats, named = (work.limbeck._through_files("forward", final, "--input", inputs, flags)["logits"]
                          for flags in ([], ["--bk-activations=float"], ["--bk-activations=int8"]))  # fmt: skip
    assert torch.equal(own, named) and not torch.equal(own, floats)
    # Its own self in floats can teach it.
    teaching = work.recipe("int8-self", teacher__model=None, teacher__kind="self", teacher__bk_activations="float", **keys)
    result = work.folder / "int8-self.json"
    work.limbeck.run("eval", str(teaching), f"--run={run.folder}", "--json", str(result))
    assert 0 < json.loads(result.read_text())["result"]["kd"] < 0.01
    packed = work.folder / "int8-packed"
    quantized(work.limbeck, final, packed, "--quantize=int8", "--bk-activations=float")
    assert json.loads((packed / "config.json").read_text())["bk_activations"] == "float"


@pytest.mark.parametrize("heads", [64, 1])
def test_int8_activations_are_in_the_memory_plan(work, heads):
    """Full rows, of a student that has many heads or little beside one. Floats are planned and measured the same: codes live a moment."""
    saved(resnet_bk(32, 2, seed=3, bk_heads=heads), work.folder / f"heads-{heads}")
    run = work.train(f"plan-{heads}", teacher__model=None, objective__alpha=0, student__model=work.folder / f"heads-{heads}",
                     student__bk_activations="int8", data__packing="packed", data__batch_size=8, train__steps="2 steps",
                     checkpoint__keep=0)  # fmt: skip
    planned, measured = run.result["planned_peak_bytes"], run.result["peak_bytes"]
    print(f"{heads} heads: planned {planned}, measured {measured}, ratio {planned / measured:.4f}")
    assert planned == pytest.approx(measured, rel=0.02)


def test_int8_activations_are_part_of_the_contract(work):
    recipe, result = work.recipe("int8-check", student__bk_activations="int8"), work.folder / "int8-check.json"
    work.limbeck.run("check", str(recipe), f"--json={result}")
    contract = json.loads(result.read_text())["result"]
    codes = {(cast["place"], cast["to"]) for cast in contract["casts"] if "(codes)" in cast["place"]}
    assert codes == {("student.layers.*.bk.core (codes)", "int8")} and contract["violations"] == []


@pytest.mark.parametrize("keys, words", [
    (dict(student__model="llama", student__bk_activations="int8"), "exit 2: .*is for models whose layers have a resolvent .resnet_bk., and .*is of llama"),
    (dict(student__model="codes"), 'exit .: .*"bk_activations" = "int4" is not supported, wanted float or int8'),
    (dict(student__model="codes-llama"), 'exit .: .*"bk_activations" is for what has a resolvent, and llama has none: remove the key'),
])  # fmt: skip
def test_int8_activations_are_refused_where_they_cannot_be(work, keys, words):
    def copied(source: str, name: str, **changes) -> None:
        folder = work.folder / name
        if not folder.exists():
            shutil.copytree(work.folder / source, folder)
            config = folder / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | changes))

    copied("student", "codes", bk_activations="int4")
    copied("llama", "codes-llama", bk_activations="int8")
    keys = {**keys, "student__model": work.folder / keys["student__model"]}
    with pytest.raises(LimbeckError, match="(?s)" + words):
        work.limbeck.run("check", str(work.recipe("refused", **keys)))


def test_int8_activations_of_float64_are_refused(limbeck, tmp_path):
    folder = model_zoo.write_model(BK, tmp_path, **INT8)
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*of float64 activations .*codes are made of float32"):
        limbeck.forward(folder, {"input_ids": torch.tensor([[3, 4]])}, dtype=torch.float64)


def test_the_reference_configuration_has_its_parameters(limbeck, tmp_path):
    recipe, result = tmp_path / "base.ini", tmp_path / "check.json"
    recipe.write_text(f"[student]\nmodel = {BASE}\ninit = random\n[objective]\nalpha = 0\n[data]\nbatch_size = 1\nsequence_length = 2048\n")
    limbeck.run("check", str(recipe), f"--json={result}")
    contract = json.loads(result.read_text())["result"]
    count = {module["module"]: module["parameters"] for module in contract["modules"]}
    total = sum(count.values())
    assert total == 132_660_344 and contract["violations"] == []
    assert count["student.layers.*.mlp.experts"] / total == pytest.approx(0.76, abs=0.005)
    assert {module["role"] for module in contract["modules"]} >= {"bk_core", "mixer", "expert", "head", "embedding"}
