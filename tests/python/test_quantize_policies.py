"""limbeck quantize with policies: formats by role, by importance and by budget; what each weighs and loses."""

from __future__ import annotations

import json
from pathlib import Path

import model_zoo
import pytest
import torch
import transformers
from limbeck_runner import LimbeckError
from safetensors.torch import load_file
from test_quantize_command import payload, quantized


def llama(folder: Path, **options) -> Path:
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                                         "num_key_value_heads": 2, "vocab_size": 101, "initializer_range": 0.1} | options)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return llama(tmp_path_factory.mktemp("policies") / "base")


def formats(said: dict) -> dict[str, str]:
    return {module: entry["format"] for module, entry in said["modules"].items()}


def tied(base: Path) -> bool:
    return transformers.AutoConfig.from_pretrained(base).tie_word_embeddings


def weighs_as_said(said: dict, out: Path) -> None:
    assert said["estimate"]["mixed_precision_bytes"] == said["planned_bytes"] == said["bytes"] == payload(out)
    assert said["estimate"]["total_parameters"] == said["values"]


@pytest.mark.parametrize("family", ["llama3-tied", "qwen3", "qwen3-moe", "mixtral", "phi3", "gemma2"])
def test_static_goes_by_roles(limbeck, tmp_path, family):
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    config = model_zoo.BY_NAME[family].config()
    experts = getattr(config, "num_local_experts", getattr(config, "num_experts", 0))
    tags = ["--tag", "expert int8"] if experts else []  # whose columns are no multiple of int4's groups
    said = quantized(limbeck, base, tmp_path / "out", "--policy", "static", *tags)
    weighs_as_said(said, tmp_path / "out")
    in_layers = {form for module, form in formats(said).items() if module.startswith("layers.")}
    others = {module for module, form in formats(said).items() if form == "float"}
    assert in_layers == {"int8"} and others == {"embed_tokens"} | ({"lm_head"} if not tied(base) else set()) and said["dtype"] == "float16"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    packed = {name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")}
    layers = [module for module in said["modules"] if module.endswith(".experts")]
    assert (len(layers) > 0) == (experts > 0)
    assert len(packed) == len(said["modules"]) - len(others) + len(layers) * (3 * experts - 1)
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in packed)


def test_what_a_role_gets_can_be_said(limbeck, base, tmp_path):
    said = quantized(limbeck, base, tmp_path / "out", "--policy", "static", "--tag", "mlp int4", "--rule", "model.layers.0.mlp.up_proj int8")
    weighs_as_said(said, tmp_path / "out")
    for module, form in formats(said).items():
        assert form == ("float" if module in ("embed_tokens", "lm_head") else "int8" if "self_attn" in module else "int4"), module
    assert "layers.0.mlp.up_proj" not in said["modules"]  # the rule's own
    assert said["formats"]["int8"]["tensors"] == 9
    smallest = quantized(limbeck, base, tmp_path / "all", "--policy", "static", "--tag", "embedding int8", "--tag", "head int3-g32")
    weighs_as_said(smallest, tmp_path / "all")
    assert [formats(smallest)[module] for module in ("embed_tokens", "lm_head")] == ["int8", "int3-g32"]
    with pytest.raises(LimbeckError, match=r"embed_tokens: others read an embedding in int8 or float, not in int4: give it one of these"):
        quantized(limbeck, base, tmp_path / "never", "--policy", "static", "--tag", "embedding int4")
    kept = quantized(limbeck, base, tmp_path / "kept", "--policy", "static", "--dtype", "float32")
    assert kept["dtype"] == "float32"


def test_what_vllm_serves_is_written(limbeck, base, tmp_path):
    said = quantized(limbeck, base, tmp_path / "out", "--quantize", "int4", "--rule", "model.layers.*.mlp.down_proj int8", "--serve-by", "vllm")
    assert set(said["formats"]) == {"float32", "int4", "int8"}


def test_experts_whose_columns_are_no_groups_are_refused_by_name(limbeck, tmp_path):
    base = model_zoo.write_model(model_zoo.BY_NAME["mixtral"], tmp_path / "base")
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*layers.0.mlp.experts: its columns are no multiple of the groups of int4"):
        limbeck.run("quantize", "--model", str(base), "--output", str(tmp_path / "out"), "--policy", "static")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "static", "--quantize", "int8"], "gives all modules one format and --policy=static each its own"),
        (["--quantize", "int8", "--tag", "mlp int4"], "--tag says what --policy=static gives a role"),
        (["--policy", "static", "--tag", "mlps int4"], "wanted ROLE FORMAT, such as"),
        (["--policy", "static", "--tag", "norm int8"], "weights of role norm cannot be packed"),
        (["--policy", "static", "--tag", "mlp nf4"], "no folder that others read holds them together"),
        (["--quantize", "int4", "--rule", "model.layers.1.self_attn.k_proj int8", "--serve-by", "vllm"],
         "model.layers.1.self_attn.q_proj is int4 and model.layers.1.self_attn.k_proj is int8, which vLLM computes as one"),
        (["--quantize", "int4", "--rule", "model.layers.0.mlp.gate_proj float32", "--serve-by", "vllm", "--dtype", "float32"],
         "model.layers.0.mlp.gate_proj is float and model.layers.0.mlp.up_proj is int4, which vLLM computes as one"),
        (["--quantize", "int8", "--rule", "model.layers.0.** int3", "--serve-by", "vllm"],
         "model.layers.0.self_attn.q_proj is in int3, and vLLM serves codes of 8 and 4 bits alone: take int4-g32"),
        (["--policy", "static", "--rule", "model.layers.7.** int8"], "matches no module of model"),
        (["--policy", "static", "--tag", "mlp int4", "--rule", "model.layers.*.mlp.* int8"], "is for no module"),
    ],
)
def test_contradictions_are_refused(limbeck, base, tmp_path, flags, message):
    with pytest.raises(LimbeckError, match="exit 2") as refused:
        limbeck.run("quantize", "--model", str(base), "--output", str(tmp_path / "out"), *flags)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()
