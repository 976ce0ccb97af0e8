"""Folders of packed weights: those that transformers and bitsandbytes write are read, and the other way round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bitsandbytes
import model_zoo
import parity_measures
import pytest
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError, run_program
from safetensors.torch import load_file, save_file
from test_quantized_models import OUTPUT_BAR, quantized_weights
from training_work import Work

FAMILIES = ("llama3", "qwen3", "gemma2", "gpt2")
NESTED = {"nf4": False, "nf4-double": True}
KEPT = ["lm_head", "model.layers.1.mlp"]  # as unsloth's folders keep single modules


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight in float32, the packed ones by bitsandbytes itself."""
    stored, weights = load_file(folder / "model.safetensors"), {}
    for name, tensor in stored.items():
        parts = {key.removeprefix(name + "."): value for key, value in stored.items() if key.startswith(name + ".")}
        if "quant_state.bitsandbytes__nf4" in parts:
            state = bitsandbytes.functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            # As a matrix of whole blocks: on the CPU bitsandbytes 0.50 mixes up blocks that go on in the next row.
            shape, state.shape, state.dtype = state.shape, torch.Size([2 * tensor.numel() // 64, 64]), torch.float32
            weights[name] = bitsandbytes.functional.dequantize_4bit(tensor, state).view(shape)
        elif ".weight." not in name:
            weights[name] = tensor.float()
    return weights


def meant(base: Path, folder: Path, family: model_zoo.Family) -> torch.nn.Module:
    """The model of `base` with what the folder's tensors stand for."""
    model, names = model_zoo.load(family, base, torch.float32), unpacked(folder)
    parameters = dict(model.named_parameters())
    turned = {n + ".weight" for n, m in model.named_modules() if isinstance(m, transformers.pytorch_utils.Conv1D)}
    turned &= quantized_weights(model).keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name in names:
                parameter.copy_(names[name].T if name in turned else names[name])
    return model


def differs(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of the largest entry; of tokens that are no padding."""
    family = model_zoo.BY_NAME["llama3"]
    ours, theirs = (parity_measures.compared(family, model_zoo.make_inputs(family), logits) for logits in (ours, theirs))
    return parity_measures.largest_error(ours, theirs)


def packed_by_transformers(base: Path, out: Path, form: str, kept: list[str] | None = None) -> Path:
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=NESTED[form], bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=kept,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32, device_map="cpu")
    model.save_pretrained(out)
    return out


def resave(base: Path, out: Path, *flags: str) -> Path:
    done = run_program(base, out, *flags, program="resave_model")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "some kept"])
def test_what_transformers_packed_is_read(limbeck, tmp_path, form, kept):
    family = model_zoo.BY_NAME["llama3"]
    base = model_zoo.write_model(family, tmp_path / "base")
    folder = packed_by_transformers(base, tmp_path / "packed", form, kept)
    inputs = model_zoo.make_inputs(family)
    theirs = meant(base, folder, family)(**inputs.tensors, use_cache=False).logits.detach()
    assert differs(limbeck.forward(folder, inputs.tensors)["logits"], theirs) < OUTPUT_BAR
    said = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert said["bnb_4bit_use_double_quant"] is NESTED[form]


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_packed_is_what_it_was(limbeck, tmp_path, name, form):
    family = model_zoo.BY_NAME[name]
    base = model_zoo.write_model(family, tmp_path / "base")
    inputs = model_zoo.make_inputs(family)
    beside = limbeck.forward(base, inputs.tensors, quantize=form)["logits"]
    folder = resave(base, tmp_path / "packed", "--packed", form)
    assert torch.equal(limbeck.forward(folder, inputs.tensors)["logits"], beside)
    again = resave(folder, tmp_path / "again", "--packed", "as-it-is")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    theirs = meant(base, folder, family)(**inputs.tensors, use_cache=False).logits.detach()
    assert differs(beside, theirs) < OUTPUT_BAR
    floats = resave(folder, tmp_path / "floats")  # without --packed: what the codes stand for
    assert "quantization_config" not in json.loads((floats / "config.json").read_text())
    assert differs(limbeck.forward(floats, inputs.tensors)["logits"], beside) < OUTPUT_BAR


@pytest.mark.parametrize("form", NESTED)
def test_transformers_loads_what_is_saved_packed(limbeck, tmp_path, form):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=101, initializer_range=0.1)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    folder = resave(tmp_path / "base", tmp_path / "packed", "--packed", form, "--rule", "model.layers.0.self_attn.* float32")
    model = parity_measures.in_its_own_dtype(transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu"))
    packed = {n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert "model.layers.0.mlp.up_proj" in packed and "model.layers.0.self_attn.q_proj" not in packed and "lm_head" not in packed
    ids = torch.arange(64).view(2, 32)
    theirs = model(input_ids=ids, use_cache=False).logits.detach()
    ours = limbeck.forward(folder, {"input_ids": ids})["logits"]
    assert parity_measures.largest_error(ours, theirs) < OUTPUT_BAR
    whole = limbeck.forward(tmp_path / "base", {"input_ids": ids})["logits"]
    assert parity_measures.largest_error(whole, ours) > 1e-2


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    base = model_zoo.write_model(model_zoo.BY_NAME["llama3"], folder / "base")
    return resave(base, folder / "packed", "--packed", "nf4-double")


def test_a_rule_unpacks_or_packs_anew(limbeck, packed, tmp_path):
    inputs = model_zoo.make_inputs(model_zoo.BY_NAME["llama3"])
    whole = limbeck.forward(packed, inputs.tensors)["logits"]
    floats = resave(packed, tmp_path / "floats", "--rule", "model.layers.0.** float32", "--rule", "model.layers.1.** float32")
    assert differs(limbeck.forward(floats, inputs.tensors)["logits"], whole) < OUTPUT_BAR
    mixed = resave(packed, tmp_path / "mixed", "--rule", "model.layers.0.** int8")
    assert differs(limbeck.forward(mixed, inputs.tensors)["logits"], whole) < 0.2


def test_packing_what_is_packed_is_refused(limbeck, packed):
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*--quantize.*config.json, whose weights are packed already .bitsandbytes.: leave it out"):
        limbeck.forward(packed, model_zoo.make_inputs(model_zoo.BY_NAME["llama3"]).tensors, quantize="int8")


def test_it_is_a_teacher_and_a_base_of_adapters(limbeck, tmp_path):
    work = Work(tmp_path, limbeck)
    folders = {}
    for role in ("teacher", "student"):
        folders[role] = resave(work.folder / role, tmp_path / f"packed-{role}", "--packed", "nf4")
    keys = dict(train__steps="3 steps", adapter__kind="lora")
    direct = work.train("direct", teacher__quantize="nf4", student__quantize="nf4", **keys)
    stored = work.train("stored", teacher__model=folders["teacher"], student__model=folders["student"], **keys)
    assert stored.series("loss") == direct.series("loss")


def test_an_adapter_is_merged_into_what_the_codes_stand_for(limbeck, tmp_path):
    work = Work(tmp_path, limbeck)
    folder = resave(work.folder / "student", tmp_path / "packed-student", "--packed", "nf4")
    run = work.train("lora", student__model=folder, train__steps="3 steps", adapter__kind="lora")
    merge = ["merge", "--model", str(folder), "--adapter", str(run.folder / "final"), "--output"]
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*whose weights are packed: say what becomes of them: --into=dequantized"):
        limbeck.run(*merge, str(tmp_path / "unsaid"))
    ids = {"input_ids": torch.arange(64).view(2, 32)}
    beside = limbeck.forward(folder, ids, adapter=run.folder / "final")["logits"]
    limbeck.run(*merge, str(tmp_path / "merged"), "--into", "dequantized")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert parity_measures.largest_error(limbeck.forward(tmp_path / "merged", ids)["logits"], beside) < OUTPUT_BAR
    assert parity_measures.largest_error(limbeck.forward(folder, ids)["logits"], beside) > 100 * OUTPUT_BAR


STATE = ".quant_state.bitsandbytes__nf4"


def state_with(tensors: dict, name: str, **changes) -> None:
    state = json.loads(bytes(tensors[name + STATE].tolist())) | changes
    tensors[name + STATE] = torch.tensor(list(json.dumps({k: v for k, v in state.items() if v is not None}).encode()), dtype=torch.uint8)


def damage(kind: str, tensors: dict, config: dict) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    quantization = config["quantization_config"]
    match kind:
        case "another shape":
            state_with(tensors, name, shape=[2, 2])
        case "no shape":
            state_with(tensors, name, shape=None)
        case "another block":
            state_with(tensors, name, blocksize=128)
        case "no JSON":
            tensors[name + STATE] = tensors[name + STATE][:100].clone()
        case "fewer codes":
            tensors[name] = tensors[name][:-1].clone()
        case "other levels":
            tensors[name + ".quant_map"] = tensors[name + ".quant_map"].flip(0)
        case "no scales":
            del tensors[name + ".absmax"]
        case "nan":
            tensors[name + ".nested_absmax"][0] = float("nan")
        case "fp4":
            quantization["bnb_4bit_quant_type"] = "fp4"
        case "8 bits":
            quantization.update(load_in_4bit=False, load_in_8bit=True)
        case "hqq":
            quantization["quant_method"] = "hqq"


DAMAGES = {
    "another shape": "shape [2,2], wanted [",
    "no shape": "shape none, wanted [",
    "another block": "blocksize",
    "no JSON": "quant_state.bitsandbytes__nf4",
    "fewer codes": "is Byte [",
    "other levels": "other levels than those of nf4",
    "no scales": "no tensor",
    "nan": "is NaN or infinite",
    "fp4": 'bnb_4bit_quant_type is "fp4", wanted "nf4"',
    "8 bits": "the 8 bits of bitsandbytes are not read",
    "hqq": 'quant_method "hqq" is not read: wanted "bitsandbytes"',
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_refused_by_name(limbeck, packed, tmp_path, kind):
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damage(kind, tensors, config)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(folder, model_zoo.make_inputs(model_zoo.BY_NAME["llama3"]).tensors)
    assert "exit 4" in str(refused.value) and DAMAGES[kind] in str(refused.value)
