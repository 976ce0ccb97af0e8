"""Experts in few bits: folders, their readers, mixes, scores and GGUF. Values and gradients are in test_quantized_models.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import gguf
import parity_measures
import pytest
import token_rows
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError, build_folder
from safetensors.torch import load_file, save_file
from test_compensated_rounding import Stored, textbook
from test_compressed_tensors import IDS, logits, read_by_transformers
from test_packed_folders import packed_by_transformers
from test_packed_folders import unpacked as by_bitsandbytes
from test_quantize_command import payload, quantized
from test_quantize_scores import lines_of, unpacked, weight_of
from test_quantized_models import OUTPUT_BAR, by_matrix
from test_quantized_ops import ops

EXPERTS, LAYERS, VOCABULARY = 4, 2, 101
SIZES = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
             num_experts_per_tok=2, initializer_range=0.1, tie_word_embeddings=False, max_position_embeddings=64)  # fmt: skip
CONFIGS = {
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, num_experts=EXPERTS, head_dim=16, moe_intermediate_size=32,
                                             intermediate_size=64, norm_topk_prob=True),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=EXPERTS, intermediate_size=96),
}  # fmt: skip
# The names of an expert's matrices in a checkpoint.
PARTS = {"qwen3_moe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
         "mixtral": ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2")}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def base(request, tmp_path_factory) -> Path:
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("experts") / request.param
    transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    return folder


def expert_names(kind: str, layer: int) -> list[str]:
    return [f"model.layers.{layer}.{part.format(expert)}.weight" for expert in range(EXPERTS) for part in PARTS[kind]]


def unpacked_by_name(base: Path, folder: Path, out: Path) -> Path:
    """The base with the weights that a folder of packed ones stands for, by the layout's description or bitsandbytes itself."""
    stored, plain = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert stored.keys() != plain.keys()
    shutil.copytree(base, out)
    if any("bitsandbytes" in name for name in stored):
        weights = by_bitsandbytes(folder)
    else:
        weights = {name: stored[name] if name in stored else weight_of(stored, name).float() for name in plain}
    assert weights.keys() == plain.keys()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, out / "model.safetensors")
    return out


@pytest.mark.parametrize("form", ["int8", "int8-g32", "int4-sym-g32", "int4-g32", "int3-sym-g32", "int2-g32", "nf4", "nf4-double"])
def test_a_folder_of_packed_experts_is_read_with_the_same_bits(limbeck, base, tmp_path, form):
    done = limbeck.run("quantize", "--model", str(base), "--output", str(tmp_path / "packed"), "--quantize", form, "--json",
                       str(tmp_path / "said.json"))  # fmt: skip
    said = json.loads((tmp_path / "said.json").read_text())["result"]
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed") < 0.45 * payload(base)
    stored, kind = load_file(tmp_path / "packed" / "model.safetensors"), base.name
    suffix = ".absmax" if form.startswith("nf4") else "_packed"
    assert all(name + suffix in stored for layer in range(LAYERS) for name in expert_names(kind, layer))
    ours = limbeck.forward(tmp_path / "packed", IDS)["logits"]
    assert torch.equal(ours, limbeck.forward(base, IDS, quantize=form)["logits"])
    by_others = not form.startswith("nf4") and "sym" in form or form.startswith("int8")
    assert (f"loaded by {'transformers' if by_others else 'limbeck'}" in done.stdout) and ("experts are stored one by one" in done.stderr) != by_others
    wanted = logits(read_by_transformers(unpacked_by_name(base, tmp_path / "packed", tmp_path / "floats"), dtype=torch.float32))
    assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR
    assert parity_measures.largest_error(limbeck.forward(base, IDS)["logits"], wanted) > 1e-3
    if by_others:
        assert parity_measures.largest_error(ours, logits(read_by_transformers(tmp_path / "packed", dtype=torch.float32))) < OUTPUT_BAR


def test_a_rule_gives_the_experts_of_a_layer_a_format_of_their_own(limbeck, base, tmp_path):
    """Floats beside codes too: the folder says which, and the layer that stays as it was is read so."""
    rules = ["--rule", "model.layers.0.mlp.experts float32", "--rule", "model.layers.1.mlp.experts int4-sym-g32"]
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", "int8", *rules)
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")
    assert said["formats"]["int4-sym-g32"]["tensors"] == 3 * EXPERTS
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    assert all(name in stored for name in expert_names(base.name, 0))
    ours = limbeck.forward(tmp_path / "packed", IDS)["logits"]
    wanted = logits(read_by_transformers(unpacked_by_name(base, tmp_path / "packed", tmp_path / "floats"), dtype=torch.float32))
    assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR


def test_experts_that_others_left_floats_are_read_so(limbeck, base, tmp_path):
    """transformers packs what is a module of its own there, and its config.json does not say that experts are none."""
    folder = packed_by_transformers(base, tmp_path / "packed", "nf4")
    stored = load_file(folder / "model.safetensors")
    assert all(stored[name].is_floating_point() for name in expert_names(base.name, 0))
    wanted = logits(read_by_transformers(unpacked_by_name(base, folder, tmp_path / "floats"), dtype=torch.float32))
    assert parity_measures.largest_error(limbeck.forward(folder, IDS)["logits"], wanted) < OUTPUT_BAR
    # The same of a folder of compressed-tensors that names the class of modules alone.
    quantized(limbeck, base, tmp_path / "int8", "--quantize", "int8", "--rule", "model.layers.*.mlp.experts float32")
    before = limbeck.forward(tmp_path / "int8", IDS)["logits"]
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = [name for name in ignored if not name.startswith("re:")]
    assert len(config["quantization_config"]["ignore"]) == len(ignored) - LAYERS
    (tmp_path / "int8" / "config.json").write_text(json.dumps(config))
    assert torch.equal(limbeck.forward(tmp_path / "int8", IDS)["logits"], before)


def test_experts_of_a_layer_in_two_formats_are_refused(limbeck, base, tmp_path):
    quantized(limbeck, base, tmp_path / "packed", "--quantize", "int8")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    last = expert_names(base.name, 1)[-1].removesuffix(".weight")
    config["quantization_config"]["ignore"].append(last)
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LimbeckError, match=f"(?s)exit 4: .*{re.escape(last)}.weight in floats, and the experts of a layer are read in one"):
        limbeck.forward(tmp_path / "packed", IDS)


def test_a_missing_expert_is_refused_by_name(limbeck, base, tmp_path):
    quantized(limbeck, base, tmp_path / "packed", "--quantize", "int8")
    stored, lost = load_file(tmp_path / "packed" / "model.safetensors"), expert_names(base.name, 1)[4]
    for part in ("_packed", "_scale", "_shape"):
        del stored[lost + part]
    save_file(stored, tmp_path / "packed" / "model.safetensors")
    with pytest.raises(LimbeckError, match=f"(?s)exit 4: .*1 tensors are missing from the checkpoint: {re.escape(lost)}"):
        limbeck.forward(tmp_path / "packed", IDS)


@pytest.mark.parametrize(("form", "type_name"), [("int8", "Q8_0"), ("int4-sym-g32", "Q4_0")])
def test_gguf_has_the_codes_of_all_experts(limbeck, base, tmp_path, form, type_name):
    quantized(limbeck, base, tmp_path / "packed", "--quantize", form, "--dtype", "float16")
    limbeck.run("export-gguf", "--model", str(tmp_path / "packed"), "--without-tokenizer", "--output", str(tmp_path / "out.gguf"))
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for layer in range(LAYERS):
        for i, name in enumerate(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")):
            tensor = theirs[f"blk.{layer}.{name}.weight"]
            assert tensor.tensor_type.name == type_name
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).double()
            wanted = torch.stack([weight_of(stored, one) for one in expert_names(base.name, layer)[i::3]])
            assert torch.equal(values, wanted.float().double()), name


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    documents = token_rows.random_documents(24, 12, 24, VOCABULARY, seed=3)
    return token_rows.write(tmp_path_factory.mktemp("data") / "data", documents, VOCABULARY)


def flags(base: Path, data: Path, out: Path, **keys) -> list[str]:
    options = {"model": base, "data": data, "output": out, "json": f"{out}.json", "packing": "padded", "sequence-length": 24,
               "calibration-rows": 3, "held-out-rows": 3, "exchange-rows": 8} | {k.replace("_", "-"): v for k, v in keys.items()}  # fmt: skip
    return ["quantize", *(f"--{name}={value}" for name, value in options.items())]


FORMATS = ["float", "int8", "int4-g32"]


def expert_scores(base: Path) -> dict[str, list[float]]:
    """Half the squared change of a layer's experts in each format, weighted with squared gradients, on the first rows."""
    net = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager")
    modules = {name.removeprefix("model."): module for name, module in net.named_modules() if name.endswith(".experts")}
    seen: dict[str, tuple] = {}
    for name, module in modules.items():
        def keep(_, inputs, output, name=name):
            output.retain_grad()
            seen[name] = (inputs, output)
        module.register_forward_hook(keep)
    scores = {name: [0.0] * len(FORMATS) for name in modules}
    for ids in [torch.tensor([row]) for row in token_rows.random_documents(24, 12, 24, VOCABULARY, seed=3)[:3]]:
        logits = net(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        for name, module in modules.items():
            inputs, output = (tuple(t.detach() for t in seen[name][0]), seen[name][1])
            own = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
            for i, form in enumerate(FORMATS):
                with torch.no_grad():
                    for key, parameter in module.named_parameters():
                        parameter.copy_(stored_as(key, own[key], form))
                    changed = type(module).forward(module, *inputs)
                    scores[name][i] += 0.5 * float(((changed - output) * output.grad).square().sum())
                    for key, parameter in module.named_parameters():
                        parameter.copy_(own[key])
    return scores


def stored_as(name: str, weight: torch.Tensor, form: str) -> torch.Tensor:
    if form == "float":
        return weight.half()
    def values(matrix):
        parts = ops.quantize_weight(matrix.float(), form, torch.float16)
        return ops.dequantize_rows(parts, form, *matrix.shape, 0, matrix.shape[0]).double()
    return by_matrix(name, weight, values)


def test_a_budget_ties_the_experts_of_a_layer_by_scores_of_float64(base, data, tmp_path):
    Limbeck().run(*flags(base, data, tmp_path / "out", budget="3.4x", formats=",".join(FORMATS), exchange_steps=0))
    said = json.loads(Path(f"{tmp_path / 'out'}.json").read_text())["result"]
    assert said["estimate"]["mixed_precision_bytes"] == said["planned_bytes"] == said["bytes"] == payload(tmp_path / "out")
    head, *rows = lines_of(tmp_path / "out.scores.jsonl")
    wanted = {name.replace("block_sparse_moe", "mlp"): losses for name, losses in expert_scores(base).items()}
    assert len(wanted) == LAYERS and wanted.keys() <= set(head["modules"])
    for name, losses in wanted.items():
        place = head["modules"].index(name)
        assert 0 < losses[0] < losses[1] < losses[2]
        for i, form in enumerate(FORMATS):
            ours = sum(row["modules"][place][4][i] for row in rows)
            assert ours == pytest.approx(losses[i], rel=2e-2 if form == "float" else 1e-3), (name, form)


def test_dynamic_formats_have_no_scores_of_experts(base, data, tmp_path):
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*int8-dynamic rounds the inputs of each expert too, which scores of"):
        Limbeck().run(*flags(base, data, tmp_path / "out", budget="3x", formats="float,int8-dynamic"))


@pytest.mark.parametrize("form", ["int8-dynamic", "int4-sym-g32-dynamic"])
def test_formats_that_round_inputs_too_are_for_the_cpu(limbeck, base, data, tmp_path, form):
    """Each expert's product is that of a linear module (grouped_quantized_test.cpp); near what the codes alone stand for."""
    said = quantized(limbeck, base, tmp_path / "packed", "--quantize", form)
    assert said["planned_bytes"] == said["bytes"] == payload(tmp_path / "packed")
    ours = limbeck.forward(tmp_path / "packed", IDS)["logits"]
    assert torch.equal(ours, limbeck.forward(base, IDS, quantize=form)["logits"])
    static = limbeck.forward(base, IDS, quantize=form.removesuffix("-dynamic"))["logits"]
    # Of most tokens: where a router nearly ties (one of Mixtral's here by 8e-5), rounded inputs choose another expert.
    errors = (ours - static).abs().amax(-1) / static.abs().max()
    assert errors.min() > 1e-4 and errors.flatten().quantile(0.9) < 0.05
    recipe = tmp_path / "recipe.ini"
    recipe.write_text(f"[teacher]\nmodel = {base}\n[student]\nmodel = {base}\n[data]\ntrain = {data}\n[precision]\n"
                      f"rule = student.layers.*.mlp.experts {form}\n")  # fmt: skip
    with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*layers.0.mlp.experts. is to be {form} .*of experts is for the CPU alone: say {form[:-8]} there"):
        limbeck.run("check", str(recipe), "--device=cuda")


def routed(net, documents: list[list[int]]) -> list[list[torch.Tensor]]:
    """By layer and expert, the tokens that come to it."""
    found = []
    hooks = [module.register_forward_hook(lambda _, inputs, __: found.append(inputs[:2]))
             for name, module in net.named_modules() if name.endswith(".experts")]  # fmt: skip
    with torch.no_grad():
        for ids in documents:
            net(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = [found[layer::LAYERS] for layer in range(LAYERS)]
    return [[torch.cat([x.flatten(0, -2)[(chosen.view(-1, 2) == expert).any(1)] for x, chosen in passes]) for expert in range(EXPERTS)]
            for passes in layers]  # fmt: skip


def test_experts_are_rounded_by_the_tokens_that_come_to_them(base, data, tmp_path):
    """The codes of each are the textbook's for its own tokens, down for what its packed gate and up make of them."""
    form, rows = "int4-sym-g32", 8
    Limbeck().run(*flags(base, data, tmp_path / "out", quantize=form, rounding="compensated", calibration_rows=rows))
    said = json.loads(Path(f"{tmp_path / 'out'}.json").read_text())["result"]["rounded_experts"]
    floats, stored = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    net = transformers.AutoModelForCausalLM.from_pretrained(unpacked_by_name(base, tmp_path / "out", tmp_path / "floats"), dtype=torch.float64,
                                                            attn_implementation="eager", experts_implementation="eager")  # fmt: skip
    documents = token_rows.random_documents(24, 12, 24, VOCABULARY, seed=3)[:rows]
    same = total = 0
    for layer, of_layer in enumerate(routed(net, documents)):
        entry = said[f"layers.{layer}.mlp.experts"]
        names = expert_names(base.name, layer)
        fewest = max(floats[name].shape[1] for name in names) // 4
        assert entry["to_nearest"] == [expert for expert, x in enumerate(of_layer) if len(x) < fewest] and len(entry["to_nearest"]) < EXPERTS
        assert entry["tokens"] == sum(len(x) for x in of_layer if len(x) >= fewest) and entry["compensated"] < entry["nearest"]
        for expert, x in enumerate(of_layer):
            gate, up, down = names[3 * expert : 3 * expert + 3]
            inner = torch.nn.functional.silu(x @ weight_of(stored, gate).T) * (x @ weight_of(stored, up).T)
            for name, rows_of in ((gate, x), (up, x), (down, inner)):
                plain = Stored(ops.quantize_weight(floats[name], form), form, floats[name].shape)
                wanted = plain.codes if len(x) < fewest else textbook(floats[name], (rows_of.T @ rows_of).triu(), 0.01, plain)
                same, total = same + int((unpacked(stored[name + "_packed"], 4) + 8 == wanted).sum()), total + wanted.numel()
    # Inputs are float32 in one and float64 in the other: a code may fall on the other side of a boundary.
    print(f"{total - same} of {total} codes differ")
    assert same > 0.998 * total


@pytest.mark.parametrize("way", [{"rounding": "compensated"}, {"rounding": "learned", "rounding_steps": 20}], ids=lambda way: way["rounding"])
def test_killed_while_experts_are_rounded_it_comes_to_the_same_bits(base, data, tmp_path, way):
    keys = {"quantize": "nf4", "calibration_rows": 8} | way
    command = flags(base, data, tmp_path / "out", **keys)
    run = subprocess.Popen([build_folder() / "bin" / "limbeck", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)  # fmt: skip
    first = tmp_path / "out.rounding" / "stage-00000.safetensors"
    while run.poll() is None and not first.exists():
        time.sleep(0.001)
    run.kill()
    run.wait()
    assert first.exists() and not (tmp_path / "out").exists()
    assert any(".experts.down_proj.codes" in name for name in load_file(first))
    Limbeck().run(*command)
    Limbeck(threads=1).run(*flags(base, data, tmp_path / "whole", **keys))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("way", [{"rounding": "compensated"}, {"rounding": "learned", "rounding_steps": 1}], ids=lambda way: way["rounding"])
def test_experts_with_few_tokens_are_named(base, data, tmp_path, way):
    done = Limbeck().run(*flags(base, data, tmp_path / "few", quantize="int8", calibration_rows=1, **way))
    said = json.loads(Path(f"{tmp_path / 'few'}.json").read_text())["result"]["rounded_experts"]
    few = {path: entry["to_nearest"] for path, entry in said.items() if entry["to_nearest"]}
    assert few
    for path, experts in few.items():
        assert f"{path}: experts {', '.join(map(str, experts))} are rounded to nearest: fewer calibration tokens" in done.stderr


def test_experts_are_nearer_to_the_floats_when_they_are_learned(base, data, tmp_path):
    said = {way: json.loads(Path(f"{tmp_path / way}.json").read_text())["result"] for way in ("nearest", "learned")
            if Limbeck().run(*flags(base, data, tmp_path / way, quantize="int3-sym-g32", calibration_rows=12, rounding=way, **({"rounding_steps": 20} if way == "learned" else {})))}  # fmt: skip
    assert said["learned"]["measured"]["kl"] < said["nearest"]["measured"]["kl"]
    for entry in said["learned"]["learned"].values():
        assert entry["learned"] <= entry["compensated"] and entry["learned"] < 0.9 * entry["nearest"]
