"""Models on quantized bases: against transformers and PEFT with the linear weights that the codes stand for."""

from __future__ import annotations

import shutil
from pathlib import Path

import model_zoo
import parity_measures
import peft
import pytest
import test_adapters
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError
from safetensors.torch import load_file, save_file
from test_quantized_ops import FORMATS, ops
from training_work import Work

OUTPUT_BAR = 1e-5  # of the largest entry
GRADIENT_BAR = 1e-4  # relative Frobenius

# What stays in float: heads and routers.
KEPT = ("lm_head", "classifier", "pooler", "mlp.gate.")


def quantized_weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """By name, the weights that --quantize packs: of every linear module of attention and MLP, and stacks of experts."""
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not any(part in name + "." for part in KEPT):
            found[name + ".weight"] = module.weight
    return found | {name: weight for name, weight in model.named_parameters() if ".experts." in name and weight.dim() == 3}


def by_matrix(name: str, weight: torch.Tensor, function) -> torch.Tensor:
    """What a function makes of each matrix of a weight: experts are packed one by one, their gate and up apart."""
    if weight.dim() == 2:
        return function(weight.contiguous())
    parts = weight.chunk(2 if name.endswith("gate_up_proj") else 1, 1)
    return torch.cat([torch.stack([function(matrix.contiguous()) for matrix in part]) for part in parts], 1)


def dequantize(model: torch.nn.Module, form: str) -> torch.nn.Module:
    """Every such weight replaced by what its codes stand for; GPT-2 stores them the other way round."""
    conv1d = {n + ".weight" for n, m in model.named_modules() if isinstance(m, transformers.pytorch_utils.Conv1D)}
    with torch.no_grad():
        for name, weight in quantized_weights(model).items():
            matrix = (weight.T if name in conv1d else weight).float()
            values = by_matrix(name, matrix, lambda m: ops.dequantize_rows(ops.quantize_weight(m, form), form, *m.shape, 0, m.shape[0]))
            weight.copy_(values.T if name in conv1d else values)
    return model


class Quantized:
    def __init__(self, family: str, form: str, folder: Path):
        self.family, self.form = model_zoo.BY_NAME[family], form
        self.folder = model_zoo.write_model(self.family, folder / "base")
        self.model = dequantize(model_zoo.load(self.family, self.folder, torch.float32), form)
        self.inputs = model_zoo.make_inputs(self.family)

    def theirs(self, model: torch.nn.Module) -> torch.Tensor:
        extra = {"use_cache": False} if self.family.kind == "decoder" else {}
        return model(**self.inputs.tensors, **extra)[self.family.output]

    def ours(self, **options) -> dict[str, torch.Tensor]:
        return Limbeck().forward(self.folder, options.pop("tensors", self.inputs.tensors),
                                                 quantize=self.form, **options)  # fmt: skip

    def compared(self, tensor: torch.Tensor) -> torch.Tensor:
        return parity_measures.compared(self.family, self.inputs, tensor)


MODELS = [("llama3", form) for form in FORMATS] + [
    (family, "nf4") for family in ("llama2-bias", "qwen2", "gpt2", "phi3", "gemma2", "qwen3-moe", "bert", "distilbert-classifier")
] + [("mixtral", "int8"), ("mixtral", "nf4-double"), ("qwen3-moe-mixed", "int4")]


@pytest.mark.parametrize(("family", "form"), MODELS)
def test_logits_and_gradients_are_those_of_the_dequantized_model(limbeck, tmp_path, family, form):
    case = Quantized(family, form, tmp_path)
    output = case.theirs(case.model)
    cotangent = model_zoo.make_cotangent(case.inputs, tuple(output.shape))
    if case.family.kind == "classifier":
        cotangent = cotangent * case.inputs.valid[:, :1]
    output.backward(cotangent)
    got = case.ours(tensors={**case.inputs.tensors, "output_gradient": cotangent}, gradients=True)
    ours, wanted = case.compared(got[case.family.output]), case.compared(output.detach())
    plain = case.compared(limbeck.forward(case.folder, case.inputs.tensors)[case.family.output])
    assert parity_measures.largest_error(plain, wanted) > 1e-3, "quantization changes next to nothing"
    assert parity_measures.largest_error(ours, wanted) <= OUTPUT_BAR
    packed = quantized_weights(case.model)
    assert not {"grad." + name for name in packed} & got.keys() and not any(".experts." in name for name in got)  # frozen
    trained = {"grad." + n: p.grad for n, p in case.model.named_parameters() if n not in packed and p.grad is not None}
    errors = {}
    for name, gradient in got.items():
        if name.startswith("grad.") and name in trained:
            scale = parity_measures.gradient_scale(name, trained)
            errors[name] = float((gradient - trained[name]).norm() / scale.norm()) if scale.any() else 0.0
    assert len(errors) > 3 and {n: e for n, e in errors.items() if e > GRADIENT_BAR} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["int8", "nf4-double"])
def test_half_activations_are_no_worse_than_transformers(limbeck, tmp_path, form, dtype):
    """Against float64 on the same weights: rounded where they are stored in the half type, exact where in codes."""
    case = Quantized("llama3", form, tmp_path)
    packed = quantized_weights(case.model)
    exact = model_zoo.load(case.family, case.folder, torch.float64)
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(packed[name] if name in packed else parameter.to(dtype))
    half = model_zoo.load(case.family, case.folder, dtype)
    with torch.no_grad():
        for name, parameter in half.named_parameters():
            parameter.copy_(exact.get_parameter(name))
    wanted = case.compared(case.theirs(exact))
    own = parity_measures.relative_frobenius(case.compared(case.theirs(half).detach()), wanted)
    error = parity_measures.relative_frobenius(case.compared(case.ours(dtype=dtype)[case.family.output]), wanted)
    print(f"{form} {dtype}: ours {error:.2e}, transformers with rounded weights {own:.2e}")
    assert error <= 1.1 * own


ADAPTERS = {
    "lora": ("llama3", test_adapters.lora()),
    "rslora": ("llama3", test_adapters.lora(use_rslora=True)),
    "dora": ("llama3", test_adapters.lora(use_dora=True)),
    "dora-bias": ("qwen2", test_adapters.lora(use_dora=True)),
    "lora-head": ("llama3", test_adapters.lora([*test_adapters.ALL, "lm_head"])),
    "lora-gpt2": ("gpt2", test_adapters.lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "ia3": ("llama3", test_adapters.ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"])),
    "lora-experts": test_adapters.CASES["lora-experts"],
    "rslora-mixtral-experts": test_adapters.CASES["rslora-mixtral-experts"],
}


class AdaptedBase(Quantized):
    def __init__(self, name: str, form: str, folder: Path):
        family, config = ADAPTERS[name]
        super().__init__(family, form, folder)
        self.adapted = peft.get_peft_model(self.model, config, autocast_adapter_dtype=False).eval()
        test_adapters.scattered(self.adapted)
        self.adapter = folder / "adapter"
        self.adapted.save_pretrained(self.adapter)


@pytest.mark.parametrize(("name", "form"), [(name, "nf4") for name in ADAPTERS] + [("lora", f) for f in FORMATS if f != "nf4"])
def test_adapters_are_those_of_peft_on_the_dequantized_model(limbeck, tmp_path, name, form):
    case = AdaptedBase(name, form, tmp_path)
    output = case.theirs(case.adapted)
    cotangent = model_zoo.make_cotangent(case.inputs, tuple(output.shape))
    output.backward(cotangent)
    wanted = {
        "grad." + n.replace(".default", ""): p.grad for n, p in case.adapted.named_parameters() if p.grad is not None
    }
    got = case.ours(tensors={**case.inputs.tensors, "output_gradient": cotangent}, gradients=True, adapter=case.adapter)
    ours, theirs = case.compared(got[case.family.output]), case.compared(output.detach())
    assert parity_measures.largest_error(ours, theirs) <= OUTPUT_BAR
    found = {key: tensor for key, tensor in got.items() if key.startswith("grad.")}
    assert found.keys() <= {key for n in wanted for key in (n, n.removesuffix(".weight"))} and len(found) == len(wanted)
    errors = {
        key: parity_measures.relative_frobenius(found[key], wanted.get(key, wanted.get(key + ".weight"))) for key in found
    }
    assert {key: error for key, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lora", "dora-bias", "ia3"])
def test_adapters_in_half_activations_are_no_worse_than_peft(limbeck, tmp_path, name, dtype):
    case = AdaptedBase(name, "nf4", tmp_path)
    with torch.no_grad():  # what both store in the half type: embeddings, norms, head, biases
        packed = {p.data_ptr() for p in quantized_weights(case.model).values()}
        adapters = {n for n, _ in case.adapted.named_parameters() if "lora_" in n or "ia3_" in n}
        for parameter_name, parameter in case.adapted.named_parameters():
            linear = ".base_layer.weight" in parameter_name and "lm_head" not in parameter_name
            if parameter_name not in adapters and not linear and parameter.data_ptr() not in packed:
                parameter.copy_(parameter.to(dtype))
    ours = case.compared(case.ours(dtype=dtype, adapter=case.adapter)[case.family.output])
    wanted = case.compared(case.theirs(case.adapted.double()).detach())
    theirs = case.compared(case.theirs(case.adapted.to(dtype)).detach())
    own, error = (parity_measures.relative_frobenius(t, wanted) for t in (theirs, ours))
    print(f"{name} {dtype}: ours {error:.2e}, PEFT with all weights rounded {own:.2e}")
    assert error <= 1.1 * own


def test_generation_is_that_of_the_dequantized_model(limbeck, tmp_path):
    case = Quantized("llama3", "int8", tmp_path)
    ids = [5, 9, 23, 4]
    wanted = case.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    got = limbeck.generate_from_ids(case.folder, ids, "--quantize", "int8", "--ignore-eos", new_tokens=24)
    assert got.flatten().tolist()[-24:] == wanted[0, 4:].tolist()


def test_float64_activations_are_refused(limbeck, tmp_path):
    case = Quantized("llama3", "nf4", tmp_path)
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*quantized weights compute in float32"):
        case.ours(dtype=torch.float64)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("quantized"), limbeck)


def changed(folder: Path, copy: Path, change) -> Path:
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


UP = "model.layers.1.mlp.up_proj.weight"


def not_a_number(tensors):
    tensors[UP][3, 5] = float("nan")


BAD = {
    "not finite": (not_a_number, ["--allow-nonfinite"], "with NaN or infinity, wanted finite floats to quantize to nf4"),
    "not finite, not allowed": (not_a_number, [], "up_proj.weight"),
    "integers": (lambda t: t.update({UP: t[UP].int()}), [], "wanted finite floats to quantize to nf4"),
    "another shape": (lambda t: t.update({UP: t[UP][:-1].contiguous()}), [], "config.json and weights are not of one model"),
    "missing": (lambda t: t.pop(UP), [], UP),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_cannot_be_quantized_are_refused_by_name(limbeck, work, tmp_path, name):
    change, flags, message = BAD[name]
    folder = changed(work.folder / "student", tmp_path / "bad", change)
    with pytest.raises(LimbeckError) as refused:
        limbeck.generate_from_ids(folder, [5, 9], "--quantize", "nf4", *flags, new_tokens=2)
    text = str(refused.value)
    assert text.startswith("exit 4") and message in text and UP in text, text


def test_weights_stored_in_float64_are_quantized_as_in_float32(limbeck, work, tmp_path):
    inputs = {"input_ids": torch.arange(24).view(2, 12)}
    wide = changed(work.folder / "student", tmp_path / "wide", lambda t: t.update({k: v.double() for k, v in t.items()}))
    got = [limbeck.forward(folder, inputs, quantize="int4")["logits"] for folder in (wide, work.folder / "student")]
    assert torch.equal(*got)
