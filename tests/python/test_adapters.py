"""PEFT folders: what an adapter of PEFT's computes here, values and gradients, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import model_zoo
import parity_measures
import peft
import pytest
import torch
from limbeck_runner import LimbeckError
from safetensors.torch import load_file, save_file

OUTPUT_BAR = 1e-5  # of the largest entry
GRADIENT_BAR = 1e-4  # relative Frobenius

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(targets=ALL, **more) -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=targets, **{"r": 5, "lora_alpha": 12, "init_lora_weights": False} | more)


def ia3(targets, feedforward) -> peft.IA3Config:
    return peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, init_ia3_weights=False)


PATTERNS = dict(rank_pattern={"q_proj": 3, r"layers\.1\..*down_proj": 7}, alpha_pattern={"layers.0.self_attn.v_proj": 40})
EXPERTS = dict(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
CASES = {
    "lora": ("llama3", lora()),
    "lora-two-targets": ("qwen2", lora(["q_proj", "v_proj"])),
    "rslora": ("llama3", lora(use_rslora=True)),
    "patterns": ("llama3", lora(**PATTERNS)),
    "patterns-rslora": ("llama3", lora(use_rslora=True, **PATTERNS)),
    "dora": ("llama3", lora(use_dora=True)),
    "dora-bias": ("qwen2", lora(use_dora=True, **PATTERNS)),
    "lora-head": ("llama3", lora([*ALL, "lm_head"])),
    "lora-tied-head": ("llama3-tied", lora(["v_proj", "lm_head"])),
    "lora-gpt2": ("gpt2", lora(["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "dora-gpt2": ("gpt2", lora(["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=True)),
    "lora-gemma2": ("gemma2", lora()),
    "lora-phi3": ("phi3", lora(["qkv_proj", "gate_up_proj", "o_proj", "down_proj"])),
    "lora-qwen3-moe": ("qwen3-moe", lora(["q_proj", "k_proj", "v_proj", "o_proj"])),
    "lora-experts": ("qwen3-moe", lora(["q_proj"], **EXPERTS, rank_pattern={"experts.down_proj": 3})),
    "lora-one-stack": ("qwen3-moe", lora([], target_parameters=["layers.1.mlp.experts.gate_up_proj", "experts.down_proj"])),
    "rslora-mixtral-experts": ("mixtral", lora([], use_rslora=True, **EXPERTS)),
    "lora-embedding": ("llama3", lora(["embed_tokens", "q_proj"], rank_pattern={"embed_tokens": 3})),
    "rslora-embedding": ("qwen2", lora(["embed_tokens"], use_rslora=True)),
    "lora-tied-embedding": ("llama3-tied", lora(["embed_tokens"])),
    "dora-embedding": ("llama3", lora(["embed_tokens", "v_proj"], use_dora=True)),
    "lora-gemma2-embedding": ("gemma2", lora(["embed_tokens"])),
    "lora-gpt2-embeddings": ("gpt2", lora(["wte", "wpe"])),
    "lora-bert-embeddings": ("bert", lora(["word_embeddings", "token_type_embeddings", "query"])),
    "lora-bert": ("bert", lora(["query", "value", "output.dense"])),
    "lora-distilbert": ("distilbert-classifier", lora(["q_lin", "lin1", "classifier"])),
    "ia3": ("llama3", ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"])),
    "ia3-gpt2": ("gpt2", ia3(["c_attn", "mlp.c_proj"], ["mlp.c_proj"])),
}


def scattered(model: torch.nn.Module) -> None:
    """Adapter weights large enough that a wrong formula shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
            elif "magnitude" in name or "ia3_l" in name:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))


class Adapted:
    def __init__(self, name: str, folder: Path, dtype: torch.dtype = torch.float32):
        family, config = CASES[name]
        self.family = model_zoo.BY_NAME[family]
        self.base = model_zoo.write_model(self.family, folder / "base")
        self.folder = folder / "adapter"
        self.model = peft.get_peft_model(model_zoo.load(self.family, self.base, dtype), config,
                                         autocast_adapter_dtype=False)  # fmt: skip
        scattered(self.model)
        self.model.save_pretrained(self.folder)
        self.model.eval()
        self.inputs = model_zoo.make_inputs(self.family)

    def theirs(self, cotangent: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        extra = {"use_cache": False} if self.family.kind == "decoder" else {}
        output = self.model(**self.inputs.tensors, **extra)[self.family.output]
        found = {"output": output.detach()}
        if cotangent is not None:
            output.backward(cotangent.to(output.dtype))
            stored = set(load_file(self.folder / "adapter_model.safetensors"))
            for name, parameter in self.model.named_parameters():
                if parameter.grad is None:
                    continue
                plain = name.replace(".default", "")
                names = {plain, plain.removesuffix(".weight")} & stored
                found["grad." + names.pop()] = parameter.grad
        return found

    def compared(self, tensor: torch.Tensor) -> torch.Tensor:
        return parity_measures.compared(self.family, self.inputs, tensor)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_of_peft_gives_its_logits_and_gradients(limbeck, tmp_path, name):
    adapted = Adapted(name, tmp_path)
    shape = adapted.theirs()["output"].shape
    cotangent = model_zoo.make_cotangent(adapted.inputs, tuple(shape))
    if adapted.family.kind == "classifier":
        cotangent = cotangent * adapted.inputs.valid[:, :1]  # a head that reads padding reads anything
    wanted = adapted.theirs(cotangent)
    plain = limbeck.forward(adapted.base, adapted.inputs.tensors)[adapted.family.output]
    got = limbeck.forward(adapted.base, {**adapted.inputs.tensors, "output_gradient": cotangent}, gradients=True,
                          adapter=adapted.folder)  # fmt: skip
    ours, theirs = (adapted.compared(tensor) for tensor in (got[adapted.family.output], wanted["output"]))
    assert parity_measures.largest_error(adapted.compared(plain), theirs) > 0.01, "the adapter changes next to nothing"
    assert parity_measures.largest_error(ours, theirs) <= OUTPUT_BAR
    gradients = {key for key in wanted if key.startswith("grad.")}
    assert gradients == {key for key in got if key.startswith("grad.")}
    stored = load_file(adapted.folder / "adapter_model.safetensors")
    assert len(gradients) == sum(not key.endswith("base_layer.weight") for key in stored)
    errors = {key: parity_measures.relative_frobenius(got[key], wanted[key]) for key in gradients}
    assert {key: error for key, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lora", "dora", "dora-bias", "lora-gpt2", "ia3", "lora-embedding", "dora-embedding",
                                  "lora-experts"])  # fmt: skip
def test_half_types_are_no_worse_than_peft(limbeck, tmp_path, name, dtype):
    """Against PEFT in float64 on the same rounded weights."""
    adapted = Adapted(name, tmp_path, dtype)
    if adapted.family.experts:
        adapted.inputs = parity_measures.inputs_clearly_routed_by(copy.deepcopy(adapted.model).float(), adapted.family, seed=0)
    rounded = tmp_path / "rounded"
    theirs = adapted.compared(adapted.theirs()["output"])
    model_zoo.load(adapted.family, adapted.base, dtype).save_pretrained(rounded)
    ours = adapted.compared(limbeck.forward(rounded, adapted.inputs.tensors, dtype=dtype, adapter=adapted.folder)[
        adapted.family.output])  # fmt: skip
    if adapted.family.experts:
        adapted.model.base_model.model.set_experts_implementation("eager")  # grouped_mm takes no float64
    wanted = adapted.compared(adapted.model.double()(**adapted.inputs.tensors, use_cache=False)[adapted.family.output])
    own = parity_measures.relative_frobenius(theirs, wanted)
    error = parity_measures.relative_frobenius(ours, wanted)
    print(f"{name} {dtype}: ours {error:.2e}, PEFT {own:.2e}")
    assert error <= 1.1 * own


@pytest.mark.parametrize(
    "name", ["lora", "patterns-rslora", "dora-bias", "lora-head", "dora-gpt2", "lora-phi3", "lora-qwen3-moe", "ia3", "ia3-gpt2",
             "lora-embedding", "dora-embedding", "lora-bert-embeddings", "lora-experts", "rslora-mixtral-experts"]
)
def test_merged_models_are_those_that_peft_merges(limbeck, tmp_path, name):
    adapted = Adapted(name, tmp_path)
    out, report = tmp_path / "merged", tmp_path / "merge.json"
    limbeck.run("merge", "--model", str(adapted.base), "--adapter", str(adapted.folder), "--output", str(out),
                "--json", str(report))  # fmt: skip
    beside = limbeck.forward(adapted.base, adapted.inputs.tensors, adapter=adapted.folder)[adapted.family.output]
    merged = limbeck.forward(out, adapted.inputs.tensors)[adapted.family.output]
    pick = adapted.compared
    assert parity_measures.largest_error(pick(merged), pick(beside)) <= OUTPUT_BAR
    result = json.loads(report.read_text())["result"]
    assert result["modules"] > 0 and result["worst_error"] == 0  # float32 into float32
    wanted = adapted.model.merge_and_unload().state_dict()
    again = model_zoo.load(adapted.family, out, torch.float32).state_dict()
    assert again.keys() == wanted.keys()
    worst = {key: parity_measures.relative_frobenius(again[key], wanted[key]) for key in wanted if wanted[key].any()}
    assert {key: error for key, error in worst.items() if error > 1e-6} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_says_how_much_rounding_changed(limbeck, tmp_path, dtype):
    adapted = Adapted("lora", tmp_path, dtype)
    base, out, report = tmp_path / "rounded", tmp_path / "merged", tmp_path / "merge.json"
    model_zoo.load(adapted.family, adapted.base, dtype).save_pretrained(base)
    limbeck.run("merge", "--model", str(base), "--adapter", str(adapted.folder), "--output", str(out), "--json", str(report))
    result = json.loads(report.read_text())["result"]
    exact = adapted.model.double().merge_and_unload().state_dict()
    stored = model_zoo.load(adapted.family, out, dtype).state_dict()
    name = result["worst_module"] + ".weight"
    key = next(key for key in exact if key.endswith(name.removeprefix("model.")))
    error = float((stored[key].double() - exact[key]).norm() / exact[key].norm())
    assert result["worst_error"] == pytest.approx(error, rel=1e-3)
    assert 0.1 * torch.finfo(dtype).eps < error < torch.finfo(dtype).eps


@pytest.mark.parametrize("name, other", [("lora-tied-head", "embedding"), ("lora-tied-embedding", "head")])
def test_what_is_tied_is_not_merged(limbeck, tmp_path, name, other):
    adapted = Adapted(name, tmp_path)
    with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*shares its weight with the {other}"):
        limbeck.run("merge", "--model", str(adapted.base), "--adapter", str(adapted.folder), "--output",
                    str(tmp_path / "merged"))  # fmt: skip
    assert not (tmp_path / "merged").exists()


def test_generation_uses_the_adapter(limbeck, tmp_path):
    adapted = Adapted("lora", tmp_path)
    ids = [5, 9, 23, 4]
    wanted = adapted.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    flags = ("--adapter", str(adapted.folder))
    got = limbeck.generate_from_ids(adapted.base, ids, *flags, new_tokens=8)
    plain = limbeck.generate_from_ids(adapted.base, ids, new_tokens=8)
    assert got.flatten().tolist()[-8:] == wanted[0, 4:].tolist()
    assert got.tolist() != plain.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Adapted:
    return Adapted("lora", tmp_path_factory.mktemp("refused"))


def config_with(**keys):
    def change(path: Path) -> None:
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(config | keys))

    return change


def tensors_with(edit):
    def change(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)

    return change


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def renamed(tensors):
    tensors[A.replace("q_proj", "q_prj")] = tensors.pop(A)


def nan(tensors):
    tensors[A][2, 3] = float("nan")


BAD = {
    "another kind": (config_with(peft_type="VERA"), 'peft_type is "VERA", wanted LORA or IA3'),
    "a bias": (config_with(bias="all"), 'bias = "all" is not supported here'),
    "saved modules": (config_with(modules_to_save=["lm_head"]), 'modules_to_save = ["lm_head"] is not supported here'),
    "stacks that are not there": (
        config_with(target_parameters=["mlp.experts.down_proj"]),
        'target_parameters "mlp.experts.down_proj" names no stack of experts of this model',
    ),
    "parameters that are no list": (config_with(target_parameters="experts"), 'target_parameters is "experts", wanted a list'),
    "DoRA on parameters": (config_with(target_parameters=["experts.down_proj"], use_dora=True), "PEFT has only LoRA on parameters"),
    "an option of tomorrow": (config_with(use_magic=True), "use_magic = true is not supported here"),
    "another rank": (config_with(r=4), "has lora_A [5,"),
    "a rank of nothing": (config_with(r=0), "r"),
    "a broken pattern": (config_with(rank_pattern={"q_(proj": 3}), 'pattern "q_(proj" is no regular expression'),
    "no B": (tensors_with(lambda t: t.pop(B)), "has " + A + " but no lora_B"),
    "no such module": (tensors_with(renamed), "is no linear module, embedding or expert stack of this llama model"),
    "not a number": (tensors_with(nan), A),
    "another shape": (tensors_with(lambda t: t.update({B: t[B][:-1].contiguous()})), "is it an adapter of this model?"),
    "a strange tensor": (tensors_with(lambda t: t.update({"x": torch.ones(2)})), "tensor x: wanted base_model.model."),
    "other weights of the base": (
        tensors_with(lambda t: t.update({A.replace("lora_A", "base_layer"): torch.ones(1)})),
        "base_layer.weight is not the weight of the model",
    ),
    "a magnitude without DoRA": (
        tensors_with(lambda t: t.update({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4)})),
        "adapter_config.json says no word of it",
    ),
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
