"""GGUF files become folders again: what we exported to the bit, and what ggml's own writer makes of each type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import parity_measures
import pytest
import torch
import transformers
from limbeck_runner import LimbeckError, run_program
from safetensors.torch import load_file
from test_gguf import IDS, MODELS, SIZES, draw, export, in_halves
from test_packed_folders import resave
from test_quantized_models import OUTPUT_BAR

ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
ALL = MODELS | {
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "llama3": transformers.LlamaConfig(**SIZES, rope_parameters=ROPE, attention_bias=True, mlp_bias=True, rms_norm_eps=3e-5),
    "yarn": transformers.Qwen2Config(**SIZES, rope_parameters=YARN),
}


def imported(limbeck, file: Path, *flags: str, name: str = "imported") -> tuple[Path, dict]:
    folder, said = file.with_suffix(f".{name}"), file.with_suffix(".said")
    limbeck.run("import-gguf", "--model", str(file), "--output", str(folder), "--json", str(said), *flags)
    return folder, json.loads(said.read_text())["result"]


def assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# The norms of Gemma are stored as 1 + weight, which float32 rounds and half types do not.
@pytest.mark.parametrize("name", ALL)
def test_a_float_model_comes_back_to_the_bit(limbeck, tmp_path, name):
    dtype = torch.bfloat16 if "gemma" in name else torch.float16 if name in ("qwen2", "gpt2") else torch.float32
    base = draw(ALL[name], tmp_path / f"a-{name}", dtype)
    export(limbeck, base)
    folder, said = imported(limbeck, base.with_suffix(".gguf"))
    # Experts are stored one by one, which transformers 5 no longer does itself.
    assert_same_tensors(folder, resave(base, tmp_path / "one-by-one") if name in ("mixtral", "qwen3_moe") else base)
    assert said["dtype"] == str(dtype).removeprefix("torch.") and said["warnings"] == [
        f"{base.with_suffix('.gguf')}: the file has no tokenizer: the folder has no tokenizer, and is used by ids until the model's own "
        "tokenizer.json lies in it"]  # fmt: skip
    logits = limbeck.forward(base, IDS)["logits"]
    assert torch.equal(limbeck.forward(folder, IDS)["logits"], logits)
    options = {"attn_implementation": "eager"} if name == "gemma2" else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        assert parity_measures.largest_error(logits, model(**IDS, use_cache=False).logits) < OUTPUT_BAR


RULES = {"layers.0.self_attn.q_proj": "int4-sym-g32", "layers.0.self_attn.k_proj": "int8", "layers.0.self_attn.v_proj": "int8-g32",
         "layers.0.mlp.up_proj": "int4-sym-g64", "layers.0.mlp.down_proj": "int4-sym", "layers.1.self_attn.k_proj": "int4-sym",
         "layers.1.mlp.down_proj": "int8-g128", "lm_head": "int8", "embed_tokens": "int8"}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_codes_come_back_to_the_bit(limbeck, tmp_path, tied):
    config = transformers.LlamaConfig(**SIZES | dict(hidden_size=128, intermediate_size=256, tie_word_embeddings=tied))
    base, packed = draw(config, tmp_path / "base", torch.float16), tmp_path / "packed"
    rules = [word for module, form in RULES.items() if not (tied and module == "lm_head")
             for word in ("--rule", f"model.{module} {form}")]  # fmt: skip
    limbeck.run("quantize", "--model", str(base), *rules, "--output", str(packed))
    export(limbeck, packed)
    folder, said = imported(limbeck, packed.with_suffix(".gguf"))
    assert_same_tensors(folder, packed)
    assert said["dtype"] == "float16" and {"int8", "int8-g32", "int4-sym", "int4-sym-g64"} <= {row["becomes"] for row in said["types"]}
    assert said["bytes"] == sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    wanted = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == wanted
    assert torch.equal(limbeck.forward(folder, IDS)["logits"], limbeck.forward(packed, IDS)["logits"])
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*scales of its codes are numbers of float16.*--codes=floats"):
        imported(limbeck, packed.with_suffix(".gguf"), "--dtype", "bfloat16", name="half")


TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32", "Q6_K"]
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208]}  # fmt: skip


def drawn_blocks(rows: int, columns: int, kind: gguf.GGMLQuantizationType, dice: np.random.Generator) -> np.ndarray:
    """Every bit of every block at random; only the halves are finite ones, of both signs."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = dice.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for at in HALVES[kind.name]:
        blocks[:, at : at + 2] = (dice.standard_normal(len(blocks)) * 0.01).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def retyped(source: Path, target: Path, types: dict[str, str], skip: str = "") -> dict[str, np.ndarray]:
    """The file by ggml's own writer with these tensors drawn anew, in these types. What they stand for by its formulas."""
    reader, dice = gguf.GGUFReader(source), np.random.default_rng(5)
    writer, values = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents()), {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", skip):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType[types.get(tensor.name, "F32")]
        data = tensor.data.copy()
        if kind.name in HALVES:
            data = drawn_blocks(*data.shape, kind, dice)
        elif kind.name != "F32":
            data = gguf.quantize(data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        values[tensor.name] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_each_type_stands_for_what_ggml_says(limbeck, tmp_path):
    wide = transformers.LlamaConfig(**SIZES | dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2))
    base = draw(wide, tmp_path / "base")
    reader, _ = export(limbeck, base)
    matrices = [tensor.name for tensor in reader.tensors if tensor.name.startswith("blk") and len(tensor.shape) == 2]
    types = dict(zip(matrices, TYPES, strict=True)) | {"token_embd.weight": "Q8_0", "output.weight": "Q4_0"}
    values = retyped(base.with_suffix(".gguf"), tmp_path / "typed.gguf", types)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)

    def assert_stands_for_values(folder: Path) -> None:
        for name, tensor in load_file(folder / "model.safetensors").items():
            wanted = torch.from_numpy(values[names.get_name(name, try_suffixes=(".weight",))].copy())
            module = name.removesuffix(".weight")
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, in_halves(wanted, module) if wanted.ndim == 2 else wanted), name

    folder, said = imported(limbeck, tmp_path / "typed.gguf", "--codes=floats")
    assert said["dtype"] == "float32" and {row["type"] for row in said["types"]} == set(TYPES)
    assert_stands_for_values(folder)
    folder, said = imported(limbeck, tmp_path / "typed.gguf", name="codes")
    kept = {(row["type"], row["becomes"]): row["tensors"] for row in said["types"] if "int" in row["becomes"]}
    assert kept == {("Q4_0", "int4-sym-g32"): 2, ("Q8_0", "int8-g32"): 1}
    assert_stands_for_values(resave(folder, tmp_path / "resaved", "--dtype", "float32"))
    folder, said = imported(limbeck, tmp_path / "typed.gguf", "--codes=floats", "--dtype=bfloat16", name="half")
    plain = load_file(tmp_path / "resaved" / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, plain[name].bfloat16()), name


# ---- damage

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return len(value).to_bytes(8, "little") + value


def number(value: int, size: int) -> bytes:
    return (value % 2 ** (8 * size)).to_bytes(size, "little")


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def value_of(data: bytes, key: str, new: bytes, skip: int = 4) -> bytes:
    """Behind the key's type (skip=0: the type itself)."""
    whole = text(key)
    return put(data, data.index(whole) + len(whole) + skip, new)


def tensor_at(data: bytes, name: str, skip: int, new: bytes) -> bytes:
    """Skip from: 0 number of sizes (4 bytes), 4 first size (8), 12 second size (8), 20 type (4), 24 offset (8)."""
    whole = text(name)
    return put(data, data.index(whole) + len(whole) + skip, new)


def with_key(data: bytes, key: str | bytes, kind: int, value: bytes) -> bytes:
    """One more, before the others. What comes behind keeps its alignment by a key that fills up."""
    count = int.from_bytes(data[16:24], "little")
    pair = text(key) + number(kind, 4) + value
    filler = text(f"filler.{count}") + number(STRING, 4)
    filler += text("x" * (-(len(pair) + len(filler) + 8) % 32))
    return data[:16] + number(count + 2, 8) + pair + filler + data[24:]


def words(*values: str) -> bytes:
    return number(STRING, 4) + number(len(values), 8) + b"".join(text(value) for value in values)


def with_tokenizer(data: bytes, tokens=("a", "b", "ab"), merges=("a b",), kinds=None, more=()) -> bytes:
    kinds = [1] * len(tokens) if kinds is None else kinds
    data = data.replace(text("tokenizer.ggml.model"), text("tokenizer.gone.model"))
    data = with_key(data, "tokenizer.ggml.model", STRING, text("gpt2"))
    data = with_key(data, "tokenizer.ggml.pre", STRING, text("gpt-2"))
    data = with_key(data, "tokenizer.ggml.tokens", ARRAY, words(*tokens))
    data = with_key(data, "tokenizer.ggml.merges", ARRAY, words(*merges))
    data = with_key(data, "tokenizer.ggml.token_type", ARRAY, number(5, 4) + number(len(kinds), 8) + b"".join(number(k, 4) for k in kinds))
    for key, kind, value in more:
        data = with_key(data, key, kind, value)
    return data


Q, NORM = "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
DAMAGE = {
    "empty": (lambda d: b"", "the first word wants 4 bytes"),
    "another format": (lambda d: b"PK" + d[2:], "is no GGUF file: it begins with"),
    "older format": (lambda d: b"tjgg" + d[4:], "older format of ggml's"),
    "version 1": (lambda d: put(d, 4, number(1, 4)), "is GGUF version 1, wanted 2 or 3"),
    "big-endian": (lambda d: put(d, 4, b"\0\0\0\3"), "is big-endian"),
    "tensors without end": (lambda d: put(d, 8, number(2**60, 8)), r"has 1152921504606846976 tensors, at most 100000"),
    "keys without end": (lambda d: put(d, 16, number(2**61, 8)), r"has 2305843009213693952 keys, at most 65536"),
    "a key without end": (lambda d: put(d, 24, number(2**62, 8)), r"key 1 of \d+ wants 4611686018427387904 bytes"),
    "key that is no name": (lambda d: with_key(d, b"a\nb", UINT32, number(1, 4)), r"key 1 "),
    "key twice": (lambda d: with_key(d, "llama.block_count", UINT32, number(2, 4)), r'key "llama.block_count" appears twice'),
    "type of a value": (lambda d: value_of(d, "llama.block_count", number(99, 4), 0), r'"llama.block_count" has values of type 99'),
    "no boolean": (lambda d: with_key(d, "a.b", BOOL, b"\x07"), r'key "a.b" is 7, wanted 0 or 1'),
    "no UTF-8": (lambda d: with_key(d, "a.b", STRING, text(b"\xff\xfe")), r'key "a.b" holds text that is no UTF-8'),
    "array without end": (lambda d: with_key(d, "a.b", ARRAY, number(UINT32, 4) + number(2**62, 8)), r'"a.b" has 4611686018427387904 items'),
    "array of arrays": (lambda d: with_key(d, "a.b", ARRAY, number(ARRAY, 4) + number(1, 8)), "array of arrays"),
    "alignment": (lambda d: with_key(d, "general.alignment", UINT32, number(24, 4)), "general.alignment\" = 24, wanted a power of two"),
    "one of three": (lambda d: with_key(d, "split.count", 2, number(3, 2)), "is one of 3 parts of a model: join them first"),
    "sizes": (lambda d: tensor_at(d, Q, 0, number(9, 4)), "has 9 sizes, wanted 1 to 4"),
    "size of 0": (lambda d: tensor_at(d, Q, 4, number(0, 8)), "has a size of 0"),
    "size beyond all": (lambda d: tensor_at(d, Q, 4, number(2**62, 8)), "has a size of 4611686018427387904"),
    "more than a file": (lambda d: tensor_at(d, Q, 4, number(2**39, 8) * 2), r"has more than 2\^63 - 1 values"),
    "unread type": (lambda d: tensor_at(d, Q, 20, number(23, 4)), "is of type IQ4_XS, which is not read: take a file"),
    "unknown type": (lambda d: tensor_at(d, Q, 20, number(777, 4)), "is of type number 777"),
    "ragged rows": (lambda d: tensor_at(d, Q, 20, number(12, 4)), "has rows of 64 values, wanted a multiple of 256 for Q4_K"),
    "offset": (lambda d: tensor_at(d, Q, 24, number(64, 8)), "begins at byte 64 of the tensors' bytes, wanted"),
    "cut short": (lambda d: d[:-64], "cut short"),
    "cut in the header": (lambda d: d[:400], "cut short"),
    "tensor twice": (lambda d: d.replace(text("blk.1.attn_k.weight"), text("blk.1.attn_q.weight")), "\"blk.1.attn_q.weight\" appears twice"),
    "another architecture": (lambda d: d.replace(text("llama"), text("mamba")), '"general.architecture" = "mamba" is not read, wanted one of gpt2'),
    "a number that is none": (lambda d: value_of(d, "llama.block_count", number(FLOAT32, 4), 0), "llama.block_count\" = .*, wanted an integer"),
    "another width": (lambda d: value_of(d, "llama.embedding_length", number(128, 4)), r'"token_embd.weight" is \[101,64\], wanted \[101,128\]'),
    "no whole heads": (lambda d: value_of(d, "llama.attention.head_count_kv", number(3, 4)), "make no model: .*4 attention heads over 3"),
    "layers without end": (lambda d: value_of(d, "llama.block_count", number(4000, 4)), 'llama.block_count" = 4000, and the file has 21 tensors'),
    "experts of nothing": (lambda d: with_key(d, "llama.expert_count", UINT32, number(60000, 4)), 'llama.expert_count" = 60000, and layer 0 has no'),
    "more layers": (lambda d: value_of(d, "llama.block_count", number(3, 4)), r'tensor "blk\.2\.\w+\.weight" is missing, which a model of llama of 3 layers has'),
    "fewer layers": (lambda d: value_of(d, "llama.block_count", number(1, 4)), "9 tensors belong to no weight of a llama model: "),
    "not a number": (lambda d: d[:-4] + b"\0\0\xc0\x7f", "holds NaN or infinity"),
    "more tokens than rows": (lambda d: with_tokenizer(d, tokens=[f"t{i}" for i in range(102)]), "has 102 items, and the model 101 rows"),
    "token twice": (lambda d: with_tokenizer(d, tokens=("a", "b", "ab", "b")), r'tokens" \[3\] = "b" is \[1\] too'),
    "kind of a token": (lambda d: with_tokenizer(d, kinds=[1, 1, 9]), r'token_type" \[2\] is 9, wanted 1 to 6'),
    "kinds for others": (lambda d: with_tokenizer(d, kinds=[1, 1]), "has 2 items, wanted one for each of 3 tokens"),
    "merge of nothing": (lambda d: with_tokenizer(d, merges=("a c",)), r'merges" \[0\] = "a c" needs "c", which is no token'),
    "id of no token": (lambda d: with_tokenizer(d, more=[("tokenizer.ggml.bos_token_id", UINT32, number(77, 4))]), "bos_token_id\" = 77"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(limbeck, tmp_path_factory) -> bytes:
    base = draw(MODELS["llama"], tmp_path_factory.mktemp("sound") / "base")
    export(limbeck, base)
    return base.with_suffix(".gguf").read_bytes()


def test_every_damage_is_refused_by_name(tmp_path, sound):
    wrong = []
    for name, (damage, message) in DAMAGE.items():
        file = tmp_path / "damaged.gguf"
        file.write_bytes(damage(sound))
        done = run_program("import-gguf", "--model", file, "--output", tmp_path / "out")
        lines = [line for line in done.stderr.splitlines() if "damaged.gguf" in line]
        if done.returncode != 4 or not any(re.search(message, line) for line in lines):
            wrong.append(f"{name}: exit {done.returncode}: {done.stderr[-300:]}")
        left = [path.name for path in tmp_path.iterdir() if path != file]
        assert not left, (name, left)
    assert not wrong, "\n".join(wrong)


def test_what_cannot_be_rebuilt_is_said(limbeck, tmp_path, sound):
    file = tmp_path / "some.gguf"
    file.write_bytes(with_key(with_tokenizer(sound).replace(text("gpt-2"), text("bloom")), "llama.logit_scale", FLOAT32, b"\0\0\0\x40"))
    done = run_program("import-gguf", "--model", file, "--output", tmp_path / "a")
    assert done.returncode == 0 and not (tmp_path / "a" / "tokenizer.json").exists()
    assert 'cuts a text is called "bloom" in llama.cpp, and known are gpt-2, smollm' in done.stderr and "without a tokenizer" in done.stdout
    assert 'key "llama.logit_scale" is not read' in done.stderr
    done = run_program("import-gguf", "--model", file, "--output", tmp_path / "b", "--pre-tokenizer", "gpt-2")
    assert done.returncode == 0 and (tmp_path / "b" / "tokenizer.json").exists()
    done = run_program("import-gguf", "--model", file, "--output", tmp_path / "b")
    assert done.returncode == 2 and "is there already" in done.stderr
    done = run_program("import-gguf", "--model", tmp_path / "b", "--output", tmp_path / "c")
    assert done.returncode == 2 and "is a folder, which every command takes as it is" in done.stderr
