"""What refusals never say, a range without a number in it or a suggestion without a name, and what they say of files that
would fill the memory."""

import json
import re

import abuse_tokenizers
import pytest
import torch
from abuse_stock import sealed_manifest
from safetensors.torch import load_file, save_file
from test_command_line import refused
from test_hostile_use import IDS, forward
from training_work import Work, llama, saved

from limbeck_runner import Limbeck

FAR = "zzzzzzzzzzzzzzzzzzzz"  # is a misspelling of nothing


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("words"), Limbeck())


@pytest.fixture
def folder(tmp_path):
    saved(llama(32, 2, seed=2), tmp_path / "model")
    save_file(IDS, tmp_path / "in.safetensors")
    return tmp_path


def test_an_input_that_the_model_has_no_values_for_is_refused_as_such(folder):
    save_file(IDS | {"token_type_ids": torch.zeros(1, 6, dtype=torch.long)}, folder / "in.safetensors")
    assert refused(*forward(folder, folder / "out"), "--quiet", code=3) == (
        "input token_type_ids: this model takes none, leave it out")


def named_anew(path, change):
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def refusal_of_weights(folder):
    path = folder / "model" / "model.safetensors"
    names = iter(f"{i}{FAR}" for i in range(100))
    named_anew(path, lambda _: next(names))
    return refused(*forward(folder, folder / "out"), "--quiet", code=4)


def refusal_of_peft(folder):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A": torch.ones(4, 32), "lora_B": torch.ones(32, 4)}
    tensors = {f"base_model.model.{FAR}.{part}.weight": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return refused(*forward(folder, folder / "out"), "--adapter", folder / "adapter", "--quiet", code=4)


def refusal_of_npt(folder, work):
    run = work.train("npt", adapter__kind="npt", train__steps="1 steps", data__batch_size=2).folder
    path = run / "final" / "adapter_model.safetensors"
    names = iter(f"{i}{FAR}" for i in range(100))
    named_anew(path, lambda _: next(names))
    return refused(*forward(folder, folder / "out"), "--adapter", run / "final", "--quiet", code=4)


@pytest.mark.parametrize("what", ["weights", "peft", "npt", "target"])
def test_nothing_near_is_not_offered(folder, work, what):
    if what == "target":
        message = refused("check", work.recipe("far", adapter__kind="lora", adapter__target=FAR), "--quiet")
        assert f"{FAR} names no linear module, embedding or expert stack: 'limbeck check RECIPE' lists its modules" in message
    elif what == "weights":
        message = refusal_of_weights(folder)
    else:
        message = refusal_of_peft(folder) if what == "peft" else refusal_of_npt(folder, work)
    assert {"weights": "missing from the checkpoint: model.embed_tokens.weight, ", "peft": "of this llama model", "target": FAR,
            "npt": "A_proj.weight is missing: "}[what] in message, message  # fmt: skip
    assert not re.search("nearest|did you mean", message), message


DOUBLED = {"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}
AS_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


@pytest.mark.parametrize(
    "part, members, step",
    [("normalizer", "normalizers", DOUBLED), ("pre_tokenizer", "pretokenizers", AS_BYTES), ("decoder", "decoders", DOUBLED)],
)
def test_a_tokenizer_whose_steps_multiply_a_text_is_refused(tmp_path, part, members, step):
    # Halves within a whole: nothing is gained by nesting.
    value = json.loads(abuse_tokenizers.byte_level().to_str()) | {part: {"type": "Sequence", members: [
        {"type": "Sequence", members: [step] * 30}] * 2}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    (tmp_path / "lines.txt").write_text("brown foo größer\n", encoding="utf-8")
    arguments = ("--model", tmp_path, "--input", tmp_path / "lines.txt", "--json", tmp_path / "out.json")
    message = refused("tokenize", *arguments, "--quiet", code=4)
    assert f'{tmp_path / "tokenizer.json"}: "{part}": makes more than 104' in message and "wanted steps that do not multiply it" in message


@pytest.mark.parametrize("key", ["special", "continuing"])
def test_a_manifest_that_lists_two_thousand_million_ids_is_refused(work, key):
    path = work.folder / "validation" / "manifest.json"
    text = path.read_text()
    value = json.loads(text)
    value["tokenizer"] |= {"vocabulary": 2**31 - 1, key: "0-2147483646"}
    sealed_manifest(path, value)
    message = refused("eval", work.recipe("listed"), "--quiet", code=3)
    path.write_text(text)
    assert f'{path}: "tokenizer": key "vocabulary" = 2147483647, wanted an integer in [1, 16777216]' in message
