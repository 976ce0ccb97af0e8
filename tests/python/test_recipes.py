"""Every recipe in recipes/: checked as it stands, and run for two updates on models of its families scaled down."""

import configparser
import json
import math
from functools import lru_cache
from pathlib import Path

import event_file
import pytest
import resnet_bk_reference  # noqa: F401 (transformers knows the family by it)
import torch
import warm_python
from limbeck_runner import REPOSITORY, Limbeck
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

RECIPES = sorted((REPOSITORY / "recipes").glob("*.ini"))
EACH = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
STUDENT_IDS, TEACHER_IDS = 300, 340  # tokens of the two tokenizers
SCALED = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
    "dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2,
}  # fmt: skip


def read(recipe: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.read_string("[run]\n" + recipe.read_text())  # the keys before the first section
    return parser


def has_two_tokenizers(recipe: Path) -> bool:
    return read(recipe).has_option("data", "teacher_sequence_length")


def hides_words(recipe: Path) -> bool:
    return read(recipe).has_option("data", "masking")


def config_of(recipe: Path, role: str) -> dict:
    return json.loads((recipe.parent / read(recipe)[role]["model"] / "config.json").read_text())


def classes_of(recipe: Path) -> int:
    """Of a classifier; 0 of anything else."""
    config = config_of(recipe, "student")
    return len(config["id2label"]) if config["architectures"][0].endswith("ForSequenceClassification") else 0


def scaled_model(recipe: Path, role: str, folder: Path) -> Path:
    """The same family, dtype and options as the recipe's model, with random weights; the teacher is a layer deeper."""
    keys = read(recipe)
    config = config_of(recipe, role)
    dtype = getattr(torch, keys[role]["dtype"])
    config |= {name: value for name, value in SCALED.items() if name in config}
    if "n_layers" not in config:
        config["num_hidden_layers"] = 3 if role == "teacher" else 2
    config["vocab_size"] = TEACHER_IDS if role == "teacher" and has_two_tokenizers(recipe) else STUDENT_IDS
    config["pad_token_id"] = None
    torch.manual_seed(3 if role == "teacher" else 4)
    built = CONFIG_MAPPING[config["model_type"]](**{k: v for k, v in config.items() if k not in ("model_type", "torch_dtype")})
    masked = config.get("architectures", [""])[0].endswith("ForMaskedLM")
    new_head = keys[role].get("init") == "new_head"  # of an encoder, to whose weights the classifier's config.json is given
    classifier = classes_of(recipe) > 0 and not new_head
    encoder = config["model_type"] == "bert" and not masked
    kind = (AutoModelForMaskedLM if masked else AutoModelForSequenceClassification if classifier else AutoModel if encoder
            else AutoModelForCausalLM)  # fmt: skip
    model = kind.from_config(built)
    model.to(dtype).save_pretrained(folder)
    if new_head:
        (folder / "config.json").write_text(json.dumps(config))
    if keys[role].get("init") == "random":
        (folder / "model.safetensors").unlink()  # config.json alone must do
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The recipes' own text as shards: of one tokenizer, of two, and of word pieces with a mask token."""
    root = tmp_path_factory.mktemp("data")
    texts = [path for path in (REPOSITORY / "recipes").iterdir() if path.is_file()] * 2

    def prepare(*arguments):
        command = [REPOSITORY / "tools" / "prepare_data.py", "--quiet", *arguments]
        warm_python.completed([*command, "--split-blank", *texts], code=0)

    @lru_cache(maxsize=None)
    def folder(two_tokenizers: bool, hides: bool, classes: int = 0) -> Path:
        if classes:
            parts = [part for path in texts for part in path.read_text().split("\n\n")]
            records = [{"text": part, "label": number % classes} for number, part in enumerate(parts) if part.strip()]
            (root / "labelled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            warm_python.completed([REPOSITORY / "tools" / "prepare_data.py", "--quiet", "--train-vocabulary", STUDENT_IDS, "--label-key",
                                   "label", "--validation-fraction", 0.2, "--out", root / "labelled", root / "labelled.jsonl"], code=0)  # fmt: skip
            return root / "labelled"
        if hides:
            prepare("--train-vocabulary", STUDENT_IDS, "--train-kind", "wordpiece", "--special-tokens", "--no-append-eos",
                    "--validation-fraction", 0.2, "--out", root / "pieces")  # fmt: skip
            return root / "pieces"
        one = root / "one"
        if not one.exists():
            prepare("--train-vocabulary", STUDENT_IDS, "--validation-fraction", 0.2, "--out", one)
        if not two_tokenizers:
            return one
        prepare("--train-vocabulary", TEACHER_IDS, "--out", root / "teacher")
        prepare("--tokenizer", one / "tokenizer", "--teacher-tokenizer", root / "teacher" / "tokenizer",
                "--validation-fraction", 0.2, "--out", root / "two")  # fmt: skip
        return root / "two"

    return folder


@EACH
def test_a_recipe_opens_with_what_it_does_costs_and_gives(recipe):
    comment = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = "\n".join(comment)
    assert len(comment) >= 4 and not comment[0].startswith(("Costs", "Expect"))
    assert "Costs:" in text and "Expect:" in text and "limbeck " in text


@EACH
def test_a_recipe_passes_check(limbeck, recipe, tmp_path):
    result = tmp_path / "check.json"
    limbeck.run("check", str(recipe), f"--json={result}")
    contract = json.loads(result.read_text())["result"]
    assert contract["violations"] == []
    roles = {module["module"].split(".")[0] for module in contract["modules"]}
    keys = read(recipe)
    assert "student" in roles and ("teacher" in roles) == keys.has_section("teacher")
    asked = {role: keys[role]["dtype"] for role in ("teacher", "student") if keys.has_option(role, "dtype")}
    for role, dtype in asked.items():
        storages = {module["storage"] for module in contract["modules"] if module["module"].startswith(f"{role}.")}
        assert dtype in storages
        if not keys.has_option("precision", "rule"):
            assert storages == {dtype}


@EACH
def test_a_recipe_trains_two_updates(recipe, data, tmp_path):
    keys, two = read(recipe), has_two_tokenizers(recipe)
    folder, run = data(two, hides_words(recipe), classes_of(recipe)), tmp_path / "run"
    flags = [f"--{role}.model={scaled_model(recipe, role, tmp_path / role)}" for role in ("teacher", "student")
             if keys.has_option(role, "model")]  # fmt: skip
    flags += [f"--data.train={folder / 'train'}", f"--data.validation={folder / 'validation'}", f"--run={run}",
              "--data.batch_size=2", "--data.sequence_length=32", "--train.steps=2 steps", "--train.accumulate=2",
              "--train.log_every=1", "--eval.every=1", "--eval.batches=2"]  # fmt: skip
    flags += ["--data.teacher_sequence_length=48"] if two else []
    Limbeck(timeout=300).run("train", str(recipe), *flags)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["phase"] == "train"]
    evaluated = [line for line in lines if line["phase"] == "eval"]
    assert [line["step"] for line in trained] == [1, 2] and [line["step"] for line in evaluated] == [1, 2]
    for line in trained + evaluated:
        assert math.isfinite(line["loss"]), line
    assert all(line["targets"] > 0 or keys.has_option("objective", "embedding_weight") for line in trained)
    assert trained[0]["grad_norm"] > 0 and trained[0]["skipped"] == 0
    assert sorted(event_file.read_run(run)["train/loss"]) == [1, 2]
    weights = "adapter_model" if keys.has_section("adapter") else "model"
    assert (run / "final" / f"{weights}.safetensors").is_file() and (run / "contract.json").is_file()
