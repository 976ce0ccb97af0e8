"""Folders in compressed-tensors' layouts: those that its own compressor wrote are read, and ours are loaded by transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import parity_measures
import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from limbeck_runner import LimbeckError
from safetensors.torch import load_file, save_file
from test_packed_folders import resave
from test_quantized_models import OUTPUT_BAR
from training_work import Work

IDS = {"input_ids": torch.arange(64).view(2, 32)}
WRITTEN = ["int8", "int8-g128", "int8-g32", "int4", "int4-g64", "int4-g32", "int4-sym", "int4-sym-g64", "int4-sym-g32",
           "int3", "int3-sym-g64", "int2-g32", "int2-sym"]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Heads that share keys, and rows of the head that are no multiple of 8; groups are whole, as others want them."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=101, initializer_range=0.1)  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "base"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def read_by_transformers(folder: Path, **options) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()


def logits(model: transformers.PreTrainedModel, inputs: dict = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def weights(bits: int, symmetric: bool, group: int | None) -> dict:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel", "group_size": group}


def compressed(base: Path, out: Path, groups: dict[str, dict], ignore: list[str], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Written by compressed-tensors itself, with scales of least and largest values; gives the logits of what it means."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    config = QuantizationConfig(config_groups=groups, ignore=ignore)
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        size = scheme.weights.group_size or module.weight.shape[1]
        parts = [(g.amin(1), g.amax(1)) for g in module.weight.detach().split(size, dim=1)]
        low, high = (torch.stack(values, 1) for values in zip(*parts, strict=True))
        scale, zero = calculate_qparams(low, high, scheme.weights)
        module.weight_scale.data = scale.to(dtype)
        if not scheme.weights.symmetric:
            module.weight_zero_point.data = zero.to(torch.int8)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    compressor.decompress_model(model)
    for module in model.modules():  # what the weights mean, without activations in 8 bits
        if hasattr(module, "quantization_enabled"):
            module.quantization_enabled = False
    return logits(model)


INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
THEIRS = {
    "int4": ({"a": {"targets": ["Linear"], "weights": weights(4, True, 128)}}, ["lm_head"]),
    "int4 in groups of 32": ({"a": {"targets": ["Linear"], "weights": weights(4, True, 32)}}, ["lm_head"]),
    "int4 with zeros": ({"a": {"targets": ["Linear"], "weights": weights(4, False, 64)}}, ["re:.*lm_head"]),
    "int3 with zeros": ({"a": {"targets": ["Linear"], "weights": weights(3, False, 128)}}, ["lm_head"]),
    "int2 by bytes": ({"a": {"targets": ["Linear"], "weights": weights(2, True, 32), "format": "int-quantized"}}, ["lm_head"]),
    "int8": ({"a": {"targets": ["Linear"], "weights": weights(8, True, None), "format": "pack-quantized"}}, ["lm_head"]),
    "int8 by bytes": ({"a": {"targets": ["Linear"], "weights": weights(8, True, None), "format": "int-quantized"}}, ["lm_head"]),
    "int8 in groups": ({"a": {"targets": ["Linear"], "weights": weights(8, True, 128), "format": "pack-quantized"}}, ["lm_head"]),
    "a mix": (
        {
            "a": {"targets": ["re:.*mlp.*", "model.layers.0.self_attn.o_proj"], "weights": weights(4, False, 32)},
            "b": {"targets": ["re:.*self_attn.*"], "weights": weights(8, True, None), "format": "pack-quantized"},
        },
        ["lm_head", "re:.*layers[.]1[.]mlp[.]up_proj"],
    ),
    "the head too": ({"a": {"targets": ["Linear"], "weights": weights(4, True, 32)}}, []),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", THEIRS)
def test_what_compressed_tensors_wrote_is_read(limbeck, base, tmp_path, kind, dtype):
    groups, ignore = THEIRS[kind]
    wanted = compressed(base, tmp_path / "packed", groups, ignore, dtype)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    assert any(name.endswith("weight_scale") for name in tensors)
    ours = limbeck.forward(tmp_path / "packed", IDS, dtype=torch.float32)["logits"]
    if dtype == torch.bfloat16:  # in float32 what the scales of bfloat16 mean; its own logits are rounded all the way
        wide = read_by_transformers(tmp_path / "packed", dtype=torch.float32)
        wanted = logits(wide) if kind != "int8 by bytes" else wanted
    bar = 2e-2 if kind == "int8 by bytes" and dtype == torch.bfloat16 else OUTPUT_BAR
    assert parity_measures.largest_error(ours, wanted) < bar
    assert parity_measures.largest_error(limbeck.forward(base, IDS)["logits"], ours) > 1e-3


APART = {"input_ids": torch.arange(64).view(64, 1)}  # rows that hear nothing of each other


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Of each row. A value between two codes goes either way by the last bit of the float sums before it: most rows have no such."""
    return (ours - theirs).abs().amax((1, 2)) / theirs.abs().max()


@pytest.mark.parametrize(("arguments", "form"), [(weights(8, True, None), "int-quantized"), (weights(4, True, 32), "pack-quantized"), (weights(4, True, 128), "int-quantized")])
def test_inputs_in_8_bits_are_computed_as_compressed_tensors_does(limbeck, base, tmp_path, arguments, form):
    groups = {"a": {"targets": ["Linear"], "weights": arguments, "input_activations": INPUTS, "format": form}}
    compressed(base, tmp_path / "packed", groups, ["lm_head"])
    ours = limbeck.forward(tmp_path / "packed", APART)["logits"]
    assert apart(ours, logits(read_by_transformers(tmp_path / "packed"), APART)).median() < OUTPUT_BAR
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    assert apart(ours, limbeck.forward(tmp_path / "packed", APART)["logits"]).min() > 1e-3


def test_codes_beyond_4_bits_are_refused(limbeck, base, tmp_path):
    compressed(base, tmp_path / "packed", {"a": {"targets": ["Linear"], "weights": weights(4, True, 32), "format": "int-quantized"}}, ["lm_head"])
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    tensors[NAME][3, 5] = 8
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LimbeckError, match="layers.1.mlp.up_proj.weight holds codes beyond -8 to 7, and config.json says 4 bits"):
        limbeck.forward(tmp_path / "packed", IDS)


@pytest.mark.parametrize("form", ["int8-dynamic", "int4-sym-dynamic", "int4-sym-g32-dynamic"])
def test_transformers_rounds_the_inputs_of_what_we_write(limbeck, base, tmp_path, form):
    folder = resave(base, tmp_path / "packed", "--packed", form, "--rule", "model.layers.1.mlp.** int8-g32")
    ours, theirs = limbeck.forward(folder, APART)["logits"], logits(read_by_transformers(folder), APART)
    assert apart(ours, theirs).median() < OUTPUT_BAR
    again = resave(folder, tmp_path / "again", "--packed", "as-it-is")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    whole = "model.layers.0.mlp.down_proj.weight"
    assert (whole if form == "int8-dynamic" else whole + "_packed") in load_file(folder / "model.safetensors")
    with pytest.raises(AssertionError, match=rf"lm_head\] is to be {form} .* say int8 for a head or an embedding"):
        resave(base, tmp_path / "head", "--packed", "int8", "--rule", f"model.lm_head {form}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", WRITTEN)
def test_transformers_loads_what_we_write(limbeck, base, tmp_path, form, dtype):
    """Scales are quantized anew in the folder's dtype where that is narrower than float32."""
    source = base if dtype == "float32" else resave(base, tmp_path / "narrow", "--dtype", dtype)
    folder = resave(source, tmp_path / "packed", "--packed", form, "--scales", dtype)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors" and config["dtype"] == dtype
    ours = limbeck.forward(folder, IDS, dtype=torch.float32)["logits"]
    theirs = logits(read_by_transformers(folder, dtype=torch.float32))
    assert parity_measures.largest_error(ours, theirs) < OUTPUT_BAR
    again = resave(folder, tmp_path / "again", "--packed", "as-it-is")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    if dtype == "float32":
        assert torch.equal(limbeck.forward(base, IDS, quantize=form)["logits"], ours)


@pytest.mark.parametrize("form", WRITTEN)
def test_the_bytes_of_a_weight_are_those_of_its_parts(base, tmp_path, form):
    tensors = load_file(resave(base, tmp_path / "packed", "--packed", form) / "model.safetensors")
    name, rows, columns = "model.layers.0.mlp.down_proj.weight", 128, 384
    stored = {part: tensors[f"{name}_{part}"] for part in ("packed", "scale")}
    group = columns if form == "int8" else int(form.split("-g")[1]) if "-g" in form else 128
    groups = math.ceil(columns / group)
    assert stored["packed"].nbytes == rows * math.ceil(columns * int(form[3]) / 32) * 4
    assert stored["scale"].shape == (rows, groups)
    assert (name + "_zero_point" in tensors) == (not form.startswith("int8") and "sym" not in form)


def test_a_mix_of_formats_is_one_folder(limbeck, base, tmp_path):
    folder = resave(base, tmp_path / "packed", "--packed", "int4-sym-g32", "--rule", "model.layers.0.** int8", "--rule",
                    "model.layers.1.self_attn.q_proj float32")  # fmt: skip
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert [group["weights"]["num_bits"] for group in quantization["config_groups"].values()] == [4, 8]
    assert sorted(quantization["ignore"]) == ["lm_head", "model.layers.1.self_attn.q_proj"]
    ours, theirs = limbeck.forward(folder, IDS)["logits"], logits(read_by_transformers(folder))
    assert parity_measures.largest_error(ours, theirs) < OUTPUT_BAR


def test_scales_that_would_be_rounded_are_refused(base, tmp_path):
    narrow = resave(base, tmp_path / "narrow", "--dtype", "bfloat16")
    with pytest.raises(AssertionError, match="its scales are float32, and not all of them are numbers of bfloat16"):
        resave(narrow, tmp_path / "packed", "--packed", "int4")


def test_a_last_group_that_is_shorter_is_refused(tmp_path):
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=330, num_hidden_layers=1, num_attention_heads=4, vocab_size=10)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    with pytest.raises(AssertionError, match="layers.0.mlp.down_proj.weight: 330 columns are no multiple of its groups of 32"):
        resave(tmp_path / "base", tmp_path / "packed", "--packed", "int4-g32")


def test_nf4_beside_int8_has_no_folder(base, tmp_path):
    with pytest.raises(AssertionError, match="weights in int8, nf4 have no folder in common"):
        resave(base, tmp_path / "packed", "--packed", "nf4", "--rule", "model.layers.0.** int8")


def test_it_is_a_teacher_and_a_base_of_adapters(limbeck, tmp_path):
    work = Work(tmp_path, limbeck)
    folders = {r: resave(work.folder / r, tmp_path / f"packed-{r}", "--packed", "int4-g32") for r in ("teacher", "student")}
    keys = dict(train__steps="3 steps", adapter__kind="lora")
    direct = work.train("direct", teacher__quantize="int4-g32", student__quantize="int4-g32", **keys)
    stored = work.train("stored", teacher__model=folders["teacher"], student__model=folders["student"], **keys)
    assert stored.series("loss") == direct.series("loss")


NAME = "model.layers.1.mlp.up_proj.weight"


def damage(kind: str, tensors: dict, config: dict) -> None:
    quantization = config["quantization_config"]
    arguments = quantization["config_groups"]["group_0"]["weights"]
    match kind:
        case "another shape":
            tensors[NAME + "_shape"][0] = 7
        case "no shape":
            del tensors[NAME + "_shape"]
        case "fewer codes":
            tensors[NAME + "_packed"] = tensors[NAME + "_packed"][:, :-1].contiguous()
        case "no scales":
            del tensors[NAME + "_scale"]
        case "nan":
            tensors[NAME + "_scale"][0, 0] = float("nan")
        case "no zeros":
            del tensors[NAME + "_zero_point"]
        case "zeros of another shape":
            tensors[NAME + "_zero_point"] = tensors[NAME + "_zero_point"][:-1].contiguous()
        case "reordered":
            tensors[NAME + "_g_idx"] = torch.zeros(128, dtype=torch.int32)
        case "5 bits":
            arguments["num_bits"] = 5
        case "codes of 3 bits":
            arguments["num_bits"] = 3
        case "another strategy":
            arguments["strategy"] = "block"
        case "floats":
            arguments["type"] = "float"
        case "another group":
            arguments["group_size"] = 48
        case "inputs of static scales":
            quantization["config_groups"]["group_0"]["input_activations"] = INPUTS | {"dynamic": False, "strategy": "tensor"}
        case "outputs":
            quantization["config_groups"]["group_0"]["output_activations"] = INPUTS
        case "another format":
            quantization["config_groups"]["group_0"]["format"] = "marlin-24"
        case "no group":
            quantization["config_groups"] = {}
        case "not compressed":
            quantization["quantization_status"] = "frozen"
        case "a rotation":
            quantization["transform_config"] = {"config_groups": {"u": {"type": "hadamard"}}}
        case "an expression":
            quantization["ignore"] = ["re:(lm_head"]
        case "targets":
            quantization["config_groups"]["group_0"]["targets"] = "Linear"


DAMAGES = {
    "another shape": "_shape is 7 x 128, wanted 384 x 128",
    "no shape": "_shape is missing",
    "fewer codes": "_packed is Int [384,15], wanted Int [384,16]",
    "no scales": "_scale is missing",
    "nan": "NaN or infinit",
    "no zeros": "_zero_point is missing",
    "zeros of another shape": "_zero_point is Int [47,4], wanted Int [48,4]",
    "reordered": "it has a _g_idx",
    "5 bits": "5 bits of int, with zero points, strategy group, group_size 32 are not read: wanted 2 to 4 bits",
    "codes of 3 bits": "_packed is Int [128,16], wanted Int [128,12]",
    "another strategy": "strategy block",
    "floats": "4 bits of float",
    "another group": "group_size 48 are not read",
    "inputs of static scales": '"input_activations": changes what the module computes, and is not read: wanted none, or beside weights of 8 bits',
    "outputs": '"output_activations": changes what the module computes, and is not read',
    "another format": 'format "marlin-24" is not read',
    "no group": "no group of config.json's config_groups names its module",
    "not compressed": 'quantization_status is "frozen", wanted "compressed"',
    "a rotation": "transform_config changes what the weights compute",
    "an expression": '"re:(lm_head": missing )',
    "targets": "targets is no list of names",
}


@pytest.fixture(scope="module")
def packed(base, tmp_path_factory) -> Path:
    return resave(base, tmp_path_factory.mktemp("packed") / "packed", "--packed", "int4-g32")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_refused_by_name(limbeck, packed, tmp_path, kind):
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damage(kind, tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(folder, IDS)
    assert DAMAGES[kind] in str(refused.value), refused.value
