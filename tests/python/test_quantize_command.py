"""limbeck quantize: a folder that others load, which weighs what was planned, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import torch
import transformers
from limbeck_runner import LimbeckError
from safetensors.torch import load_file
from test_compressed_tensors import IDS, base  # noqa: F401
from test_quantized_models import OUTPUT_BAR
from test_quantized_ops import FORMATS

DTYPES = ("float32", "bfloat16")


def quantized(limbeck, base: Path, out: Path, *flags: str) -> dict:
    limbeck.run("quantize", "--model", str(base), "--output", str(out), "--json", str(out) + ".json", *flags)
    return json.loads(Path(str(out) + ".json").read_text())["result"]


def payload(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_it_weighs_what_was_planned_and_others_load_it(limbeck, base, tmp_path, form, dtype):
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", form, "--dtype", dtype)
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")
    values = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(base).parameters())
    assert said["values"] == values and said["compression_ratio"] == pytest.approx(4 * values / said["bytes"])
    assert said["layout"] == ("bitsandbytes" if form.startswith("nf4") else "compressed-tensors")
    theirs = parity_measures.in_its_own_dtype(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map="cpu", dtype=torch.float32))
    with torch.no_grad():
        wanted = theirs(**IDS, use_cache=False).logits
    ours = limbeck.forward(tmp_path / "packed", IDS, dtype=getattr(torch, dtype))["logits"]
    assert parity_measures.largest_error(ours.float(), wanted) < (OUTPUT_BAR if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mixtral", "phi3"])
@pytest.mark.parametrize("form", ["int8", "nf4", "nf4-double"])
def test_families_weigh_what_was_planned(limbeck, tmp_path, family, form):
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", form)
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")


@pytest.mark.parametrize("family, form, warned", [("mixtral", "nf4", True), ("mixtral", "int8", False), ("qwen3", "nf4", False)])
def test_experts_that_transformers_does_not_read_are_said(limbeck, tmp_path, family, form, warned):
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    done = limbeck.run("quantize", "--model", str(base), "--output", str(tmp_path / "packed"), "--quantize", form)
    assert ("experts are stored one by one" in done.stderr) == warned
    assert ("loaded by limbeck" in done.stdout) == warned


def test_a_rule_without_the_models_name_is_refused(limbeck, base, tmp_path):
    with pytest.raises(LimbeckError, match='(?s)exit 2: .*begins with "lm_head", where no module is: wanted model as its first part'):
        quantized(limbeck, base, tmp_path / "packed", "--quantize", "int8", "--rule", "lm_head int8")
    assert not (tmp_path / "packed").exists()


def test_gpt2_is_packed_by_bitsandbytes_alone(limbeck, tmp_path):
    base = model_zoo.write_model(model_zoo.BY_NAME["gpt2"], tmp_path / "base")
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", "nf4")
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*c_attn.weight is stored transposed, and compressed-tensors has no words"):
        quantized(limbeck, base, tmp_path / "int8", "--quantize", "int8")
    assert not (tmp_path / "int8").exists()


def test_rules_make_a_mix(limbeck, base, tmp_path):
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", "int4-sym", "--rule", "model.layers.1.** int8", "--rule",
                     "model.layers.0.mlp.up_proj float32")  # fmt: skip
    assert {name: entry["tensors"] for name, entry in said["formats"].items()} == {"float32": 8, "int4-sym": 6, "int8": 7}
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")


def test_no_format_and_an_adapter_are_refused(limbeck, base, tmp_path):
    command = ["quantize", "--model", str(base), "--output", str(tmp_path / "out")]
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*say in which format: --quantize=int4-sym"):
        limbeck.run(*command)
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*takes a model without an adapter"):
        limbeck.run(*command, "--quantize", "int8", "--adapter", str(base))
    assert not (tmp_path / "out").exists()
