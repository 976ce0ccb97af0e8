"""GGUF files: read by ggml's own reader and by transformers, they are the model that was exported, to the bit."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import gguf
import parity_measures
import pytest
import torch
import transformers
from limbeck_runner import LimbeckError, run_program
from safetensors.torch import load_file
from test_gptq_folders import Scheme, quantized
from test_packed_folders import resave
from test_quantized_models import OUTPUT_BAR

IDS = {"input_ids": torch.arange(64).view(2, 32)}
VOCABULARY = 101
SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=VOCABULARY, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)  # fmt: skip
# transformers reads neither Gemma's soft caps nor its scale of queries, nor the size of Qwen3's heads: its defaults stand.
GEMMA = SIZES | dict(head_dim=256, query_pre_attn_scalar=256, sliding_window=8, num_attention_heads=2, num_key_value_heads=1)
MODELS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=128),
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2,
                                             moe_intermediate_size=32, norm_topk_prob=True),  # fmt: skip
    "gemma2": transformers.Gemma2Config(**GEMMA),
    "gemma3": transformers.Gemma3TextConfig(**GEMMA),
    "phi3": transformers.Phi3Config(**SIZES, pad_token_id=0),
    "gpt2": transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCABULARY, bos_token_id=1,
                                eos_token_id=2),  # fmt: skip
}


def draw(config, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model whose every parameter is drawn, biases and norms too."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def export(limbeck, folder: Path, *flags: str) -> tuple[gguf.GGUFReader, dict]:
    """The file FOLDER.gguf, and what the command said of it."""
    file, said = folder.with_suffix(".gguf"), folder.with_suffix(".json")
    flags = flags if any("tokenizer" in flag for flag in flags) else (*flags, "--without-tokenizer")
    limbeck.run("export-gguf", "--model", str(folder), "--output", str(file), "--json", str(said), *flags)
    return gguf.GGUFReader(file), json.loads(said.read_text())["result"]


def by_transformers(folder: Path) -> transformers.PreTrainedModel:
    file = folder.with_suffix(".gguf")
    options = {"attn_implementation": "eager"} if "gemma2" in folder.name else {}
    options |= {"pad_token_id": 0} if "phi3" in folder.name else {}  # its default is beyond these vocabularies
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **options).eval()


def differs(ours: torch.Tensor, model: transformers.PreTrainedModel) -> float:
    with torch.no_grad():
        return parity_measures.largest_error(ours, model(**IDS, use_cache=False).logits)


def names_by_gguf(reader: gguf.GGUFReader, folder: Path) -> set[str]:
    """What ggml's own table calls the tensors of a checkpoint."""
    architecture = reader.get_field("general.architecture").contents()
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(key, 2)
    stored = {re.sub(r"experts\.\d+\.", "experts.", name) for name in load_file(folder / "model.safetensors")}
    return {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in stored}


@pytest.mark.parametrize("name", MODELS)
def test_a_float_model_is_the_same_model_in_transformers(limbeck, tmp_path, name):
    folder = draw(MODELS[name], tmp_path / f"a-{name}")  # transformers has no reader for a file that says it is "mistral"
    reader, said = export(limbeck, folder)
    assert {tensor.name for tensor in reader.tensors} == names_by_gguf(reader, folder)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"} == said["formats"].keys()
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
    assert said["planned_bytes"] == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    model = by_transformers(folder)
    read, wanted = model.state_dict(), transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert read.keys() == wanted.keys()
    for key, tensor in wanted.items():
        # Gemma's norms are stored as 1 + weight, which transformers takes apart again.
        if "gemma" in name and "norm" in key:
            torch.testing.assert_close(read[key], tensor, rtol=0, atol=2e-7, msg=key)
        else:
            assert torch.equal(read[key], tensor), key
    assert differs(limbeck.forward(folder, IDS)["logits"], model) < OUTPUT_BAR


WIDE = transformers.LlamaConfig(**SIZES | dict(hidden_size=128, intermediate_size=256))
FORMATS = {  # of modules; their types in the file
    "layers.0.self_attn.q_proj": ("int4-sym-g32", "Q4_0"),
    "layers.0.self_attn.k_proj": ("int8", "Q8_0"),
    "layers.0.self_attn.v_proj": ("int4-g32", "Q4_1"),
    "layers.0.mlp.up_proj": ("int3-sym-g64", "Q4_0"),
    "layers.0.mlp.down_proj": ("int4-sym", "Q4_0"),
    "layers.1.self_attn.q_proj": ("int4", "Q4_1"),
    "layers.1.self_attn.k_proj": ("int2-sym", "Q4_0"),
    "layers.1.self_attn.v_proj": ("int2-g32", "Q4_1"),
    "layers.1.mlp.gate_proj": ("int3-g64", "Q4_1"),
    "layers.1.mlp.up_proj": ("int4-sym-g64", "Q4_0"),
    "layers.1.mlp.down_proj": ("int4-g64", "Q4_1"),
    "lm_head": ("int8", "Q8_0"),
}
RULES = [word for module, (form, _) in FORMATS.items() for word in ("--rule", f"model.{module} {form}")]


def in_halves(weight: torch.Tensor, module: str) -> torch.Tensor:
    """Rows of queries and keys as checkpoints have them: the file has the pairs of a head as neighbours."""
    heads = {"q_proj": 4, "k_proj": 2}.get(module.rsplit(".", 1)[-1])
    return weight if heads is None else weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module", params=["float16", "bfloat16", "float32"])
def packed(request, limbeck, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    draw(WIDE, folder / "base", getattr(torch, request.param))
    limbeck.run("quantize", "--model", str(folder / "base"), *RULES, "--output", str(folder / request.param))
    return folder / request.param


def test_the_codes_of_a_folder_stand_for_the_same_values(limbeck, packed):
    reader, said = export(limbeck, packed)
    ours = load_file(resave(packed, packed.with_suffix(".floats"), "--dtype", "float32") / "model.safetensors")
    scales = load_file(packed / "model.safetensors")
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    moved = 0.0
    for module, (form, type_name) in FORMATS.items():
        stored = module if module == "lm_head" else "model." + module
        tensor = theirs[names.get_name(stored) + ".weight"]
        assert tensor.tensor_type.name == type_name, module
        values = in_halves(torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)), module)
        wanted = ours[stored + ".weight"]
        # float32 scales are rounded to float16; of Q4_1 what its lowest code stands for is too: 15 steps by 2^-11.
        scale = scales[stored + ".weight_scale"].float()
        steps = scale.repeat_interleave(wanted.shape[1] // scale.shape[1], dim=1)
        rounding = 2**-11 * 15 * steps if type_name == "Q4_1" else torch.zeros_like(wanted)
        if packed.name == "float32":
            rounding = rounding + 2**-11 * wanted.abs()
        difference = (values - wanted).abs()
        assert torch.all(difference <= rounding * 1.001), (module, form, float((difference / steps).max()))
        moved = max(moved, float((difference / steps).max())) if type_name == "Q4_1" else moved
    assert (0 < said["scale_change"] <= 2**-11) if packed.name == "float32" else said["scale_change"] == 0
    assert 0 < said["minimum_change"] <= 15 * 2**-11
    assert said["widened"] == sum(form[3] in "23" for form, _ in FORMATS.values())
    assert packed.name == "float32" or abs(moved - said["minimum_change"]) < 1e-5
    assert differs(limbeck.forward(packed, IDS)["logits"], by_transformers(packed)) < (0.02 if moved else OUTPUT_BAR)


def test_codes_without_zeros_compute_the_same(limbeck, tmp_path):
    base = draw(WIDE, tmp_path / "base", torch.bfloat16)
    rules = [re.sub(r"(int[234])(?!-sym)", r"\1-sym", word) for word in RULES]
    limbeck.run("quantize", "--model", str(base), *rules, "--output", str(tmp_path / "packed"))
    reader, said = export(limbeck, tmp_path / "packed", "--dtype", "float32")
    assert said["scale_change"] == said["minimum_change"] == 0
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q4_0", "Q8_0"}
    assert differs(limbeck.forward(tmp_path / "packed", IDS)["logits"], by_transformers(tmp_path / "packed")) < OUTPUT_BAR


def test_a_folder_that_others_packed_means_the_same(limbeck, tmp_path):
    wanted = quantized(draw(WIDE, tmp_path / "base"), tmp_path / "gptq", Scheme())
    _, said = export(limbeck, tmp_path / "gptq", "--dtype", "float32")
    assert said["formats"]["Q4_0"]["tensors"] == 14 and said["scale_change"] == said["minimum_change"] == 0
    assert differs(wanted, by_transformers(tmp_path / "gptq")) < OUTPUT_BAR


def test_float_weights_are_packed_by_scales_of_float16(limbeck, tmp_path):
    tied = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    folder = draw(tied, tmp_path / "tied")
    reader, said = export(limbeck, folder, "--quantize", "int4-sym-g32", "--rule", "model.embed_tokens int8")
    assert said["scale_change"] == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["blk.1.ffn_down.weight"] == "Q4_0" and "output.weight" not in types
    stored = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    steps = stored.view(-1, 32).abs().amax(1, keepdim=True) / 7.5
    error = (torch.from_numpy(gguf.dequantize(down.data, down.tensor_type)) - stored).view(-1, 32).abs() / steps
    assert 0.4 < error.max() < 0.51
    again = tmp_path / "again.gguf"
    run_program("export-gguf", "--model", folder, "--without-tokenizer", "--quantize", "int4-sym-g32", "--rule",
                "model.embed_tokens int8", "--output", again, "--threads", 1)  # fmt: skip
    assert again.read_bytes() == folder.with_suffix(".gguf").read_bytes()


def test_what_other_programs_cannot_see_in_the_tensors_is_in_the_metadata(limbeck, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    biased = transformers.LlamaConfig(**SIZES, rope_parameters=rope, attention_bias=True, mlp_bias=True, rms_norm_eps=3e-5)
    folder = draw(biased, tmp_path / "biased", torch.bfloat16)
    reader, _ = export(limbeck, folder)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](biased, device="cpu")
    plain = 1.0 / 5e5 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(torch.from_numpy(tensors["rope_freqs.weight"].data.copy()), plain / scaled, rtol=1e-6, atol=0)
    wanted = load_file(folder / "model.safetensors")["model.layers.1.self_attn.k_proj.bias"].float()
    assert torch.equal(in_halves(torch.from_numpy(tensors["blk.1.attn_k.bias"].data.copy())[:, None], "k_proj")[:, 0], wanted)
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "BF16"
    said = {key.removeprefix("llama."): field.contents() for key, field in reader.fields.items()}
    assert said["attention.layer_norm_rms_epsilon"] == pytest.approx(3e-5) and said["rope.freq_base"] == 5e5
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16 and said["context_length"] == 64

    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
    stretched = draw(transformers.Qwen2Config(**SIZES, rope_parameters=yarn), tmp_path / "stretched")
    reader, _ = export(limbeck, stretched)
    said = {key.removeprefix("qwen2.rope.scaling."): field.contents() for key, field in reader.fields.items()}
    assert (said["type"], said["factor"], said["original_context_length"]) == ("yarn", 4.0, 16)
    assert said["attn_factor"] == pytest.approx(1.2 / (1 + 0.1 * math.log(4)))

    windowed = draw(transformers.MistralConfig(**SIZES, sliding_window=20), tmp_path / "windowed")
    assert export(limbeck, windowed)[0].get_field("llama.context_length").contents() == 20
    scaled_rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    capped = draw(transformers.Gemma2Config(**GEMMA, attn_logit_softcapping=20.0, rope_parameters=scaled_rope), tmp_path / "capped")
    reader, _ = export(limbeck, capped)
    said = {key.removeprefix("gemma2."): field.contents() for key, field in reader.fields.items()}
    assert said["attn_logit_softcapping"] == 20 and said["final_logit_softcapping"] == 30
    assert said["rope.scaling.type"] == "linear" and said["rope.scaling.factor"] == 4 and said["attention.sliding_window"] == 8


def refused(limbeck, folder: Path, message: str, *flags: str) -> None:
    with pytest.raises(LimbeckError, match=f"(?s){message}"):
        export(limbeck, folder, *flags)
    assert not folder.with_suffix(".gguf").exists()


def test_nf4_is_refused_by_module_until_a_rule_says_otherwise(limbeck, tmp_path):
    base = draw(MODELS["llama"], tmp_path / "base")
    limbeck.run("quantize", "--model", str(base), "--quantize", "nf4", "--output", str(tmp_path / "nf4"))
    refused(limbeck, tmp_path / "nf4", r"exit 2: .*nf4, which 14 weights are in: model.layers.0.self_attn.q_proj.*and 2 more: "
            r".*--rule='model\.layers\.\*\* int8'")  # fmt: skip
    reader, said = export(limbeck, tmp_path / "nf4", "--rule", "model.layers.** int8")
    assert said["formats"]["Q8_0"]["tensors"] == 14
    own = load_file(resave(tmp_path / "nf4", tmp_path / "floats", "--dtype", "float32") / "model.safetensors")
    up = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    wanted = own["model.layers.1.mlp.up_proj.weight"]
    error = (torch.from_numpy(gguf.dequantize(up.data, up.tensor_type)) - wanted).abs() / wanted.abs().amax(1, keepdim=True)
    assert 0 < error.max() < 0.51 / 127


def test_what_llama_cpp_would_compute_otherwise_is_refused(limbeck, tmp_path):
    ragged = draw(transformers.LlamaConfig(**SIZES | dict(intermediate_size=72)), tmp_path / "ragged")
    refused(limbeck, ragged, r"exit 2: .*multiple of 32: model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj: keep these "
            r"in floats, such as --rule='model.layers.0.mlp.down_proj float16'", "--quantize", "int8")  # fmt: skip
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    refused(limbeck, draw(transformers.Qwen2Config(**SIZES, rope_parameters=dynamic), tmp_path / "dynamic"), "exit 2: .*rope scalings")
    other = transformers.Gemma2Config(**GEMMA | dict(query_pre_attn_scalar=100))
    refused(limbeck, draw(other, tmp_path / "scale"), "exit 2: .*queries are scaled by 0.1, and there by 0.0625")
    bert = transformers.BertConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, vocab_size=50)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    refused(limbeck, tmp_path / "bert", "exit 2: .*family bert are not written as GGUF, wanted one of llama, mistral")
    base = draw(MODELS["llama"], tmp_path / "base")
    refused(limbeck, base, "exit 2: .*float64.*--dtype=float32", "--dtype", "float64")
    refused(limbeck, base, "exit 4: .*has no tokenizer.json", "--tokenizer", str(base))
