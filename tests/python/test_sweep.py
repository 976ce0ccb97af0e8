"""limbeck sweep as a user runs it: what it says of a classifier and a decoder, against torch, and after kill -9."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import model_zoo
import numpy
import pytest
import token_rows
import torch
import transformers
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError, build_folder, run_program
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(REPOSITORY / "tools"))
from token_shards.encoding import EncodedDocument, Stream  # noqa: E402
from token_shards.shard_writer import ShardWriter  # noqa: E402

CLASSES, LENGTH, ROWS, BATCH = 12, 24, 40, 8
CHOOSING = 16  # of the rows: half of the five batches, rounded down
MEASURING = (f"--eval.skip={CHOOSING // BATCH}", f"--eval.batches={(ROWS - CHOOSING) // BATCH}")
VOCABULARY = model_zoo.VOCABULARY
UP, DOWN = "layers.0.mlp.up_proj", "layers.1.mlp.down_proj"


def labelled(folder: Path, seed: int, rows: int = ROWS) -> tuple[Path, list[tuple[list[int], int]]]:
    """Documents whose class is written in their words: the first word says it, others are noise."""
    generator = numpy.random.default_rng(seed)
    folder.mkdir(parents=True)
    writer, all_rows = ShardWriter(folder, shard_tokens=1 << 20, labelled=True), []
    for _ in range(rows):
        ids = [int(i) for i in generator.integers(model_zoo.FIRST_TOKEN, VOCABULARY, int(generator.integers(6, LENGTH)))]
        label = ids[0] % CLASSES
        all_rows.append((ids, label))
        stream = Stream(ids=numpy.array(ids, numpy.int32), mask=numpy.ones(len(ids), numpy.uint8))
        writer.add(EncodedDocument(student=stream, teacher=None, position=None, label=label))
    digest = hashlib.sha256(f"test {VOCABULARY}".encode()).hexdigest()
    writer.finish({"tokenizer": {"digest": digest, "vocabulary": VOCABULARY, "end_of_sequence": 2, "padding": 0}, "classes": CLASSES})
    return folder, all_rows


def recipe(folder: Path, model: Path, data: Path, name: str = "recipe", **keys) -> Path:
    values = {"teacher.kind": "none", "student.model": model, "data.validation": data, "data.packing": "padded",
              "data.batch_size": BATCH, "data.sequence_length": LENGTH, "objective.alpha": 0} | {
                  key.replace("__", "."): value for key, value in keys.items()}  # fmt: skip
    sections: dict[str, list[str]] = {}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        sections.setdefault(section, []).append(f"{leaf} = {value}")
    path = folder / f"{name}.ini"
    path.write_text("".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items()))
    return path


def sweep(path: Path, run: Path, *flags: str, limbeck: Limbeck | None = None) -> dict:
    (limbeck or Limbeck(timeout=600)).run("sweep", str(path), f"--run={run}", *flags)
    return json.loads((run / "sweep.json").read_text())


class Classifier:
    def __init__(self, folder: Path):
        self.folder = folder
        self.model = model_zoo.write_model(model_zoo.BY_NAME["distilbert-classifier"], folder / "model", num_labels=CLASSES)
        self.data, self.rows = labelled(folder / "data", seed=3)
        self.recipe = recipe(folder, self.model, self.data)

    def net(self) -> transformers.PreTrainedModel:
        return transformers.AutoModelForSequenceClassification.from_pretrained(self.model, dtype=torch.float32).eval()

    def batches(self):
        for begin in range(0, len(self.rows), BATCH):
            rows = self.rows[begin : begin + BATCH]
            width = max(len(ids) for ids, _ in rows)
            ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
            for i, (row, _) in enumerate(rows):
                ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            yield ids, mask, torch.tensor([label for _, label in rows])

    def logits(self, net) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([net(input_ids=ids, attention_mask=mask).logits for ids, mask, _ in self.batches()])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Classifier:
    return Classifier(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def swept(classifier) -> dict:
    return sweep(classifier.recipe, classifier.folder / "run", "--formats=float16,int8", "--max-drop=100")


def by_key(result: dict) -> dict[tuple[str, str], dict]:
    return {(one["module"], one["format"]): one for one in result["candidates"]}


class HalfLinear(torch.nn.Module):
    """A linear module in float16 between explicit casts."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight.detach().half(), linear.bias.detach().half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x.half(), self.weight, self.bias).float()


def test_a_candidate_is_that_module_of_torch_between_casts(classifier, swept):
    plain = classifier.logits(classifier.net())
    labels = torch.cat([labels for _, _, labels in classifier.batches()])
    accuracy = lambda logits: (logits.argmax(-1) == labels).double().mean().item()  # noqa: E731
    everything, labels_of_all, chosen = plain, labels, slice(None, CHOOSING)
    plain, labels = everything[CHOOSING:], labels_of_all[CHOOSING:]
    assert swept["baseline"]["quality"] == pytest.approx(accuracy(plain), abs=1e-9)
    plain, labels = everything[chosen], labels_of_all[chosen]
    assert swept["choosing"]["quality"] == pytest.approx(accuracy(plain), abs=1e-9)
    for name, path in ((UP, "ffn.lin1"), (DOWN, "ffn.lin2"), ("layers.2.self_attn.q_proj", "attention.q_lin")):
        net = classifier.net()
        layer = net.distilbert.transformer.layer[int(name.split(".")[1])]
        parent, leaf = layer.get_submodule(path.rsplit(".", 1)[0]), path.rsplit(".", 1)[1]
        setattr(parent, leaf, HalfLinear(getattr(parent, leaf)))
        logits = classifier.logits(net)[chosen]
        found = by_key(swept)[name, "float16"]
        effect = (logits - plain).square().mean().sqrt().item()
        p, q = plain.double().log_softmax(-1), logits.double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        print(name, effect, found["logit_error"], kl, found["kl"])
        # Both round the module's outputs to float16 once; another order of sums moves a few of these roundings, and the
        # layers behind add noise of float32 to what is itself a few times 1e-4.
        assert found["logit_error"] == pytest.approx(effect, rel=0.05)
        assert found["kl"] == pytest.approx(kl, rel=0.1)
        assert found["quality"] == pytest.approx(accuracy(logits), abs=1e-9)


def test_the_table_has_all_that_was_asked(classifier, swept):
    layers = 3
    in_half = [one for one in swept["candidates"] if one["format"] == "float16"]
    assert len(in_half) == layers * (6 + 2 + 1) + 1 + 2  # linear, norms, the layer; embed_norm; two heads
    assert {one["status"] for one in swept["candidates"]} == {"measured"}
    assert not any("embed_tokens" in one["module"] for one in swept["candidates"])
    assert [model["format"] for model in swept["whole_models"]] == ["float16", "bfloat16"]
    scores = [one["score"] for one in swept["candidates"]]
    assert scores == sorted(scores, reverse=True)
    for one in swept["candidates"]:
        assert one["low"] <= one["drop"] <= one["high"] and 0 <= one["p"] <= 1
        assert one["kl_low"] <= one["kl"] <= one["kl_high"] and one["bytes"] < one["bytes_before"]
        assert one["seconds"] > 0 and one["seconds_before"] > 0
    combined = swept["combined"]
    chosen = [(one["module"], one["format"]) for one in swept["candidates"] if one["selected"]]
    assert [(one["module"], one["format"]) for one in combined["modules"]] == chosen
    assert combined["predicted_drop"] == pytest.approx(sum(by_key(swept)[key]["drop"] for key in chosen))
    assert combined["test"] == "mcnemar" and combined["safe"], "whatever is lost is less than --max-drop=100"
    assert combined["high"] > 1, "24 rows are few"
    times = swept["seconds"]
    assert 0 < times["share_of_full_evaluations_of_all_rows"] < times["share_of_full_evaluations"]


def test_rows_that_choose_measure_nothing(classifier, swept, tmp_path):
    assert {key: swept["choosing"][key] for key in ("rows", "targets", "others")} == {"rows": CHOOSING, "targets": CHOOSING, "others": True}
    assert swept["rows"] == swept["targets"] == ROWS - CHOOSING
    on = swept["measured_on"]
    assert (on["first"], on["rows"], on["of"], on["packing"], on["sequence_length"]) == (CHOOSING, ROWS - CHOOSING, ROWS, "padded", LENGTH)
    chosen = swept["combined"]["on_choosing_rows"]
    assert chosen["low"] <= chosen["drop"] <= chosen["high"]
    said = run_program("sweep", classifier.recipe, f"--run={tmp_path / 'same'}", "--eval.skip=0", f"--eval.batches={CHOOSING // BATCH}", "--max-drop=100")
    assert said.returncode == 0 and "the rows that choose the modules measure the combined model too (eval.skip = 0)" in said.stderr, said.stderr
    same = json.loads((tmp_path / "same" / "sweep.json").read_text())
    assert (same["rows"], same["choosing"]["others"], same["measured_on"]["first"]) == (CHOOSING, False, 0)
    # The same rows chose, so the candidates have the same bits.
    assert {key: one["kl"] for key, one in by_key(same).items()} == {
        key: one["kl"] for key, one in by_key(swept).items() if key[1] == "float16"}  # fmt: skip
    with pytest.raises(LimbeckError, match="eval.skip = 5: data.validation is 5 batches, of which none is left"):
        sweep(classifier.recipe, tmp_path / "none", "--eval.skip=5")


def test_what_is_written_is_what_eval_and_quantize_take(classifier, swept, tmp_path):
    run, combined = classifier.folder / "run", swept["combined"]

    def evaluated(path: Path, *flags: str) -> dict:
        Limbeck().run("eval", str(path), *flags, "--json", str(tmp_path / "eval.json"))
        return json.loads((tmp_path / "eval.json").read_text())["result"]

    whole = evaluated(run / "recipe.ini")  # on the rows that measure, for it says so
    assert whole["accuracy"] == pytest.approx(combined["quality"], abs=1e-9)
    flags = [f"--precision.rule={rule}" for rule in combined["rules"]]
    assert evaluated(classifier.recipe, "--student.dtype=float32", *MEASURING, *flags)["loss"] == whole["loss"]
    fragment = tmp_path / "with_rules.ini"
    fragment.write_text(classifier.recipe.read_text() + (run / "rules.ini").read_text())
    assert evaluated(fragment, "--student.dtype=float32", *MEASURING)["loss"] == whole["loss"]
    assert evaluated(classifier.recipe, *MEASURING)["loss"] != whole["loss"]
    rules = [f"--rule={rule}" for rule in combined["rules"]]
    Limbeck().run("quantize", f"--model={classifier.model}", f"--output={tmp_path / 'packed'}", "--dtype=float32", *rules)
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    packed = [one["module"] for one in combined["modules"] if one["format"] == "int8"]
    assert len(packed) == sum(name.endswith("_shape") for name in stored) > 0
    written = evaluated(classifier.recipe, f"--student.model={tmp_path / 'packed'}", *MEASURING)
    half = [f"--precision.rule={rule}" for rule in combined["rules"] if rule.endswith("float16")]
    packed_and_half = (f"--student.model={tmp_path / 'packed'}", "--student.dtype=float32", *MEASURING, *half)
    assert evaluated(classifier.recipe, *packed_and_half)["loss"] == whole["loss"]
    assert written["loss"] == pytest.approx(whole["loss"], rel=1e-2)


def planted(classifier: Classifier, folder: Path, factor: float) -> Path:
    """One module's weights times a factor; what follows it, a norm, hides that from float32."""
    tensors = load_file(classifier.model / "model.safetensors")
    name = "distilbert.transformer.layer.1.ffn.lin2.weight"
    tensors[name] = tensors[name] * factor
    folder.mkdir()
    for file in classifier.model.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_module_that_overflows_is_last_with_its_reason_and_never_a_drop_of_nothing(classifier, tmp_path):
    model = planted(classifier, tmp_path / "planted", 1e5)
    result = sweep(recipe(tmp_path, model, classifier.data), tmp_path / "run")
    assert numpy.isfinite(result["baseline"]["quality"])
    last = {one["module"]: one for one in result["candidates"][-3:]}
    norm = "layers.1.post_feedforward_layernorm"  # whose input is what the module gives
    assert set(last) == {DOWN, norm, "layers.1"}
    for one in last.values():
        assert one["status"] == "overflowed" and one["drop"] is None and not one["selected"]
        at_fault = norm if one["module"] == norm else DOWN
        assert one["reason"].startswith(f"student.{at_fault}: ") and "not finite" in one["reason"], one["reason"]
    assert all(one["status"] == "measured" for one in result["candidates"][:-3])
    assert DOWN not in [one["module"] for one in result["combined"]["modules"]]
    whole = {model["format"]: model["status"] for model in result["whole_models"]}
    assert whole == {"float16": "overflowed", "bfloat16": "measured"}


FAMILIES = {
    "gpt2": ["layers.0.self_attn.qkv_proj", "layers.0.mlp.down_proj", "lm_head"],  # Conv1D; the head is tied
    "qwen3-moe": ["layers.0.mlp.experts", "layers.0.mlp.gate", "lm_head"],
    "llama3-tied": ["layers.0.mlp.gate_proj", "lm_head"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_decoders_are_measured_by_perplexity(name, tmp_path):
    model = model_zoo.write_model(model_zoo.BY_NAME[name], tmp_path / "model")
    documents = token_rows.random_documents(24, LENGTH // 2, LENGTH, VOCABULARY, seed=5)
    data = token_rows.write(tmp_path / "data", documents, VOCABULARY)
    path = recipe(tmp_path, model, data)
    result = sweep(path, tmp_path / "run", "--formats=float16,int8", "--max-drop=5")
    assert (result["kind"], result["quality"], result["combined"]["test"]) == ("decoder", "perplexity", "paired t")
    assert {one["status"] for one in result["candidates"]} == {"measured"}
    found = {one["module"]: one for one in result["candidates"] if one["format"] == "float16"}
    assert set(FAMILIES[name]) <= set(found)
    assert all(one["kl"] > 0 for one in found.values())
    assert found["lm_head"]["role"] == ("head" if name == "qwen3-moe" else "head (tied)")
    Limbeck().run("eval", str(path), "--student.dtype=float32", "--eval.skip=1", "--json", str(tmp_path / "eval.json"))
    evaluated = json.loads((tmp_path / "eval.json").read_text())["result"]
    # eval adds its losses in float32.
    assert result["baseline"]["quality"] == pytest.approx(evaluated["perplexity"], rel=1e-5)
    Limbeck().run("eval", str(tmp_path / "run" / "recipe.ini"), "--json", str(tmp_path / "eval.json"))
    combined = json.loads((tmp_path / "eval.json").read_text())["result"]
    assert result["combined"]["quality"] == pytest.approx(combined["perplexity"], rel=1e-5)


@pytest.mark.parametrize("name, kind, quality", [("distilbert-masked", "masked", "perplexity"), ("distilbert", "encoder", "cosine")])
def test_encoders_are_measured_by_what_they_are_for(name, kind, quality, tmp_path):
    model = model_zoo.write_model(model_zoo.BY_NAME[name], tmp_path / "model")
    documents = token_rows.random_documents(16, LENGTH // 2, LENGTH, VOCABULARY, seed=5)
    data = token_rows.write(tmp_path / "data", documents, VOCABULARY)
    result = sweep(recipe(tmp_path, model, data), tmp_path / "run")
    assert (result["kind"], result["quality"]) == (kind, quality)
    assert all(one["status"] == "measured" and one["kl"] > 0 for one in result["candidates"])


TIMES = {"seconds", "seconds_before"}  # of a module; all that is said of the whole is below "seconds" too


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def started(path: Path, run: Path) -> subprocess.Popen:
    words = [build_folder() / "bin" / "limbeck", "sweep", path, f"--run={run}", "--formats=float16,int8", "--max-drop=100", "--threads=1", "--quiet"]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_ten_times_it_ends_with_the_bits_of_the_uninterrupted_one(classifier, swept, tmp_path):
    run, chance, kills = tmp_path / "run", random.Random(11), 0
    rows = run / "rows.jsonl"
    whole = len((classifier.folder / "run" / "rows.jsonl").read_text().splitlines())
    for _ in range(200):
        process = started(classifier.recipe, run)
        before = rows.read_text().count("\n") if rows.exists() else 0
        until = before + chance.randrange(1, max(2, whole // 12))
        while kills < 10 and process.poll() is None:
            if rows.exists() and rows.read_bytes().count(b"\n") >= until:
                time.sleep(chance.uniform(0, 0.004))
                process.send_signal(signal.SIGKILL)
                kills += process.wait(30) == -signal.SIGKILL
                break
            time.sleep(0.0005)
        if process.wait(120) == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
    print(f"{kills} kills")
    assert kills == 10
    assert without_times(json.loads((run / "sweep.json").read_text())) == without_times(swept)
    for name in ("rules.ini", "recipe.ini"):
        assert (run / name).read_bytes() == (classifier.folder / "run" / name).read_bytes()


def test_refusals_name_what_to_type(classifier, tmp_path):
    def refused(*flags: str) -> str:
        with pytest.raises(LimbeckError, match="exit 2") as failure:
            Limbeck().run("sweep", str(classifier.recipe), f"--run={tmp_path / 'run'}", *flags)
        return str(failure.value)

    assert "student.dtype = bfloat16 (--student.dtype): limbeck sweep measures against float32" in refused("--student.dtype=bfloat16")
    assert "limbeck sweep begins with a student that is float32 throughout" in refused("--student.quantize=int8")
    assert "merge the adapter first" in refused("--adapter.kind=lora")
    assert "--formats=float32" in refused("--formats=float32")
    other, _ = labelled(tmp_path / "other", seed=8, rows=16)
    sweep(classifier.recipe, tmp_path / "kept", "--eval.batches=1")
    with pytest.raises(LimbeckError, match="holds a sweep of another data"):
        sweep(classifier.recipe, tmp_path / "kept", "--eval.batches=1", f"--data.validation={other}")
