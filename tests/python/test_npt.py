"""NPT adapters: values and gradients against the formulas in float64, folders, and what is refused."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import torch
from npt_reference import SHAPES, Llama, Shape, put_into, scattered, write_folder
from safetensors.torch import load_file, save_file
from test_quantized_models import Quantized

OUTPUT_BAR = 1e-5  # of the largest entry
GRADIENT_BAR = 1e-4  # relative Frobenius

FAMILY = model_zoo.Family(
    "npt-llama",
    "LlamaConfig",
    "LlamaForCausalLM",
    {
        "vocab_size": model_zoo.VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": model_zoo.PAD,
    },
)


_bases = tempfile.TemporaryDirectory(prefix="npt-bases-")


@functools.lru_cache(maxsize=None)
def base_of(seed: int, dtype: torch.dtype) -> Path:
    """Of all shapes of adapters: nobody writes into it."""
    return model_zoo.write_model(FAMILY, Path(_bases.name) / f"{seed}-{dtype}", seed=seed, dtype=dtype)


class Adapted:
    """A tiny Llama of random weights and an NPT folder for it, both stored in `dtype`."""

    def __init__(self, shape: Shape, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0):
        self.shape, self.dtype = shape, dtype
        self.base = base_of(seed, dtype)
        self.config = FAMILY.config()
        self.weights = load_file(self.base / "model.safetensors")
        self.tensors = scattered(shape, self.config, seed=seed, dtype=dtype)
        folder.mkdir(exist_ok=True)
        self.folder = write_folder(folder / "adapter", shape, self.tensors)
        self.inputs = model_zoo.make_inputs(FAMILY, seed=seed)
        rows, length = self.inputs.valid.shape
        self.cotangent = model_zoo.make_cotangent(self.inputs, (rows, length, self.config.vocab_size), seed=seed)

    def reference(self, dtype: torch.dtype, **options) -> dict[str, torch.Tensor]:
        model = Llama(self.config, self.weights, dtype)
        return model.run(self.inputs.tensors, self.shape, self.tensors, self.cotangent, **options)

    def ours(self, limbeck) -> dict[str, torch.Tensor]:
        sent = {**self.inputs.tensors, "output_gradient": self.cotangent}
        got = limbeck.forward(self.base, sent, dtype=self.dtype, gradients=True, adapter=self.folder)
        return {"output": got.pop("logits"), **got}

    def compared(self, tensor: torch.Tensor) -> torch.Tensor:
        return parity_measures.compared(FAMILY, self.inputs, tensor)


def gradients(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in tensors if name.startswith("grad.")}


def test_the_reference_without_adapter_is_transformers_llama(tmp_path):
    adapted = Adapted(Shape(), tmp_path)
    theirs = model_zoo.load(FAMILY, adapted.base, torch.float64)(**adapted.inputs.tensors, use_cache=False).logits.detach()
    own = Llama(adapted.config, adapted.weights, torch.float64).logits(adapted.inputs.tensors)
    # Theirs has its rotary angles in float32: positions up to 31 times half a unit of the last place.
    assert parity_measures.largest_error(adapted.compared(own), adapted.compared(theirs)) < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_are_those_of_the_formulas(limbeck, tmp_path, name):
    adapted = Adapted(SHAPES[name], tmp_path)
    got, wanted = adapted.ours(limbeck), adapted.reference(torch.float64)
    assert parity_measures.largest_error(adapted.compared(got["output"]), adapted.compared(wanted["output"])) <= OUTPUT_BAR
    assert gradients(got) == gradients(wanted) == {"grad." + name for name in adapted.tensors}
    errors = {key: parity_measures.relative_frobenius(got[key], wanted[key]) for key in gradients(wanted)}
    print(f"{name}: worst gradient {max(errors.values()):.1e}")
    assert {key: error for key, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("name", SHAPES)
def test_every_part_of_the_formula_shows(tmp_path, name):
    """The bars above would see any of these: no term is so small that it could be left out unnoticed."""
    adapted = Adapted(SHAPES[name], tmp_path)
    wanted = adapted.compared(adapted.reference(torch.float64)["output"])
    for parameter in SHAPES[name].parameters(1, 1):
        without = {k: torch.zeros_like(t) if f".{parameter}." in k else t for k, t in adapted.tensors.items()}
        model = Llama(adapted.config, adapted.weights, torch.float64)
        other = adapted.compared(model.run(adapted.inputs.tensors, adapted.shape, without)["output"])
        assert parity_measures.largest_error(other, wanted) > 0.01, parameter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_half_types_are_no_worse_than_torch(limbeck, tmp_path, name, dtype):
    """Against float64 on the same rounded weights; geometric means over eight models, since two roundings of equal
    quality differ by chance: by a factor of 1.2 a model. Gradients: over all parameters too."""
    ratios, slopes = [], []
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        adapted = Adapted(SHAPES[name], folder, dtype, seed)
        got, torchs, wanted = adapted.ours(limbeck), adapted.reference(dtype), adapted.reference(torch.float64)
        error = [parity_measures.relative_frobenius(adapted.compared(one["output"]), adapted.compared(wanted["output"]))
                 for one in (got, torchs)]  # fmt: skip
        ratios.append(math.log(error[0] / error[1]))
        for key in gradients(wanted):
            error = [parity_measures.relative_frobenius(one[key], wanted[key]) for one in (got, torchs)]
            slopes.append(math.log(error[0] / error[1]))
    output, gradient = (math.exp(sum(logs) / len(logs)) for logs in (ratios, slopes))
    print(f"{name} {dtype}: of torch's own error, logits {output:.3f}, gradients {gradient:.3f}")
    assert output <= 1.1 and gradient <= 1.1


def test_the_outer_path_is_the_materialised_matrix_of_each_token(tmp_path):
    adapted = Adapted(SHAPES["outer"], tmp_path)
    fast, whole = (adapted.reference(torch.float64, materialised=flag) for flag in (False, True))
    assert parity_measures.largest_error(fast["output"], whole["output"]) < 1e-12
    for key in gradients(fast):
        assert parity_measures.relative_frobenius(fast[key], whole[key]) < 1e-11, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_modulation_starts_at_exactly_one(limbeck, tmp_path, dtype):
    """With B_times = 0 the gate is that of an additive adapter that adds nothing, bit for bit."""
    logits = {}
    for name in ("additive-neutral", "multiplicative-neutral", "outer", "multiplicative-legacy"):
        folder = tmp_path / name
        folder.mkdir()
        adapted = Adapted(SHAPES[name], folder, dtype)
        started = {k: t if ".A_proj." in k else torch.zeros_like(t) for k, t in adapted.tensors.items()}
        save_file(started, adapted.folder / "adapter_model.safetensors")
        got = limbeck.forward(adapted.base, adapted.inputs.tensors, dtype=dtype, adapter=adapted.folder)["logits"]
        logits[name] = adapted.compared(got)
    assert torch.equal(logits["additive-neutral"], logits["multiplicative-neutral"])
    assert torch.equal(logits["additive-neutral"], logits["outer"])
    assert not torch.equal(logits["additive-neutral"], logits["multiplicative-legacy"])


@pytest.mark.parametrize("name", ["both-neutral", "outer"])
@pytest.mark.parametrize("family", ["llama2-bias", "llama3-tied", "mistral", "qwen2", "qwen3", "phi3"])
def test_other_families_have_it_too(limbeck, tmp_path, family, name):
    """Against the layers of transformers' own model in float64, put together as NPT says."""
    family, shape = model_zoo.BY_NAME[family], SHAPES[name]
    base = model_zoo.write_model(family, tmp_path / "base")
    tensors = scattered(shape, family.config())
    adapter = write_folder(tmp_path / "adapter", shape, tensors)
    inputs = model_zoo.make_inputs(family)
    model = model_zoo.load(family, base, torch.float64)
    leaves = put_into(model, shape, tensors)
    logits = model(**inputs.tensors, use_cache=False).logits
    cotangent = model_zoo.make_cotangent(inputs, tuple(logits.shape))
    logits.backward(cotangent.double())
    got = limbeck.forward(base, {**inputs.tensors, "output_gradient": cotangent}, gradients=True, adapter=adapter)
    pick = lambda tensor: parity_measures.compared(family, inputs, tensor)  # noqa: E731
    assert parity_measures.largest_error(pick(got["logits"]), pick(logits.detach())) <= OUTPUT_BAR
    errors = {key: parity_measures.relative_frobenius(got["grad." + key], leaf.grad) for key, leaf in leaves.items()}
    assert {key: error for key, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("name", ["both-neutral", "outer"])
@pytest.mark.parametrize(("family", "form"), [("llama3", "int8"), ("phi3", "nf4")])
def test_beside_a_quantized_base_it_is_that_of_the_dequantized_one(limbeck, tmp_path, family, form, name):
    case, shape = Quantized(family, form, tmp_path), SHAPES[name]
    tensors = scattered(shape, case.family.config())
    adapter = write_folder(tmp_path / "adapter", shape, tensors)
    exact = model_zoo.load(case.family, case.folder, torch.float64)
    exact.load_state_dict(case.model.state_dict())
    leaves = put_into(exact, shape, tensors)
    logits = exact(**case.inputs.tensors, use_cache=False).logits
    cotangent = model_zoo.make_cotangent(case.inputs, tuple(logits.shape))
    logits.backward(cotangent.double())
    sent = {**case.inputs.tensors, "output_gradient": cotangent}
    got = case.ours(tensors=sent, gradients=True, adapter=adapter)
    assert parity_measures.largest_error(case.compared(got["logits"]), case.compared(logits.detach())) <= OUTPUT_BAR
    assert gradients(got) == {"grad." + key for key in leaves}
    errors = {key: parity_measures.relative_frobenius(got["grad." + key], leaf.grad) for key, leaf in leaves.items()}
    assert {key: error for key, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("name", ["both-neutral", "outer"])
def test_generation_with_and_without_cache_is_the_full_forward(limbeck, tmp_path, name):
    adapted = Adapted(SHAPES[name], tmp_path)
    model = Llama(adapted.config, adapted.weights, torch.float64)
    exact = {key: tensor.double() for key, tensor in adapted.tensors.items()}
    generator = torch.Generator().manual_seed(8)
    for _ in range(20):
        prompt = torch.randint(model_zoo.FIRST_TOKEN, model_zoo.VOCABULARY, (1, 7), generator=generator)
        ids, margin = prompt, math.inf
        for _ in range(16):
            whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1])[None]}
            best = model.logits(whole, adapted.shape, exact)[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            ids = torch.cat([ids, best.indices[:1][None]], dim=1)
        if margin > 1e-3:  # float32 logits agree to about 1e-5: a wider gap leaves one greedy path
            break
    else:
        raise AssertionError("every prompt has a near tie")
    flags = ("--adapter", str(adapted.folder), "--ignore-eos")
    for more in ((), ("--no-cache",)):
        got = limbeck.generate_from_ids(adapted.base, prompt[0].tolist(), *flags, *more, new_tokens=16)
        assert got.flatten().tolist() == ids[0].tolist()
    plain = limbeck.generate_from_ids(adapted.base, prompt[0].tolist(), "--ignore-eos", new_tokens=16)
    assert plain.flatten().tolist() != ids[0].tolist()
