"""NPT folders that cannot be loaded, models that cannot have them, and what cannot be done with them."""

from __future__ import annotations

import json
from pathlib import Path

import model_zoo
import pytest
import torch
from limbeck_runner import LimbeckError
from npt_reference import Shape, scattered, tensor_name, write_folder
from safetensors.torch import load_file, save_file
from test_npt import FAMILY, Adapted


def test_an_npt_adapter_is_not_merged(limbeck, tmp_path):
    adapted = Adapted(Shape(), tmp_path)
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*\[model.layers.0\].*cannot be merged"):
        limbeck.run("merge", "--model", str(adapted.base), "--adapter", str(adapted.folder), "--output",
                    str(tmp_path / "merged"))  # fmt: skip
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "family, message",
    [
        ("gemma2", "has norms before and after its parts"),
        ("gpt2", "has an MLP without a gate"),
        ("bert", "is post-norm"),
        ("mixtral", "is sparse"),
        ("qwen3-moe-mixed", "[model.layers.1] is sparse"),
    ],
)
def test_other_layers_are_refused_by_name(limbeck, tmp_path, family, message):
    family = model_zoo.BY_NAME[family]
    base = model_zoo.write_model(family, tmp_path / "base")
    adapter = write_folder(tmp_path / "adapter", Shape(), scattered(Shape(), FAMILY.config()))
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(base, model_zoo.make_inputs(family).tensors, adapter=adapter)
    text = str(refused.value)
    assert text.startswith("exit 2") and message in text and "[model.layers." in text, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Adapted:
    return Adapted(Shape(), tmp_path_factory.mktemp("refused"))


def config_with(*without, **keys):
    def change(path: Path) -> None:
        config = json.loads((path / "adapter_config.json").read_text()) | keys
        (path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))

    return change


def tensors_with(edit):
    def change(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)

    return change


A, B = tensor_name(0, "A_proj"), tensor_name(2, "B_times")


def nan(tensors):
    tensors[A][2, 3] = float("nan")


BAD = {
    "another kind of PEFT": (config_with(peft_type="NTP"), 'peft_type is "NTP", wanted LORA or IA3, or NPT'),
    "an unknown kind": (config_with(kind="gamma"), 'kind = "gamma", wanted one of delta, outer'),
    "an unknown modulation": (config_with(modulation="none"), "wanted one of additive, multiplicative, both"),
    "an unknown curve": (config_with(modulation_curve="steep"), "wanted one of neutral, legacy"),
    "a kind left out": (config_with("kind"), 'key "kind" is missing'),
    "a rank left out": (config_with("r"), 'key "r" is missing'),
    "a key of tomorrow": (config_with(use_magic=False), 'key "use_magic" is none of an NPT adapter'),
    "outer with a modulation": (config_with(kind="outer"), "modulation is for kind delta, but kind is outer"),
    "a rank of nothing": (config_with(r=0), 'key "r" = 0, wanted an integer in [1, 65536]'),
    "an absurd rank": (config_with(r=65536), "wanted [65536,48]: adapter_config.json gives it rank 65536"),
    "a rank past all": (config_with(r=10**12), "wanted an integer in [1, 65536]"),
    "a rank that is text": (config_with(r="5"), 'key "r" = "5"'),
    "another rank": (config_with(r=4), A + " is float32 [5,48], wanted [4,48]"),
    "a scale past all": (config_with(scale=1e300), 'key "scale" = 1e+300'),
    "a missing tensor": (tensors_with(lambda t: t.pop(B)), f"tensor {B} is missing"),
    "a layer too many": (tensors_with(lambda t: t.update({tensor_name(3, "A_proj"): t[A].clone()})), "1 tensors have no place"),
    "a part of another modulation": (config_with(modulation="additive"), "3 tensors have no place"),
    "a strange tensor": (tensors_with(lambda t: t.update({"x": torch.ones(2)})), "of 3 layers: x"),
    "another shape": (tensors_with(lambda t: t.update({B: t[B][:-1].contiguous()})), B + " is float32 [79,5], wanted [80,5]"),
    "turned round": (tensors_with(lambda t: t.update({B: t[B].T.contiguous()})), B + " is float32 [5,80]"),
    "integers": (tensors_with(lambda t: t.update({B: t[B].int()})), B + " is "),
    "not a number": (tensors_with(nan), A),
    "no config": (lambda path: (path / "adapter_config.json").unlink(), "adapter_config.json"),
    "no tensors": (lambda path: (path / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_loaded_is_refused_by_name(limbeck, folder, tmp_path, name):
    change, message = BAD[name]
    copy = tmp_path / "adapter"
    copy.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (copy / file).write_bytes((folder.folder / file).read_bytes())
    change(copy)
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(folder.base, folder.inputs.tensors, adapter=copy)
    text = str(refused.value)
    assert text.startswith(("exit 4", "exit 6") if name.startswith("no ") else "exit 4") and message in text, text
