"""What a check trains on: models of random weights, rows of tokens, recipes. Needs neither a network nor transformers."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

from gpu_arithmetic import Shape

END = 2


def _crc32c(data: bytes) -> int:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    left = 0xFFFFFFFF
    for byte in data:
        left = table[(left ^ byte) & 255] ^ left >> 8
    return left ^ 0xFFFFFFFF


def shard_writer():
    """The one of tools/token_shards; a machine without google_crc32c gets its sums slowly."""
    try:
        import google_crc32c  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("google_crc32c")
        stand_in.value = _crc32c
        sys.modules["google_crc32c"] = stand_in
    from token_shards.encoding import EncodedDocument, Stream
    from token_shards.shard_writer import ShardWriter

    return ShardWriter, EncodedDocument, Stream


def write_rows(folder: Path, lengths: list[int], vocabulary: int, seed: int = 0) -> Path:
    """Random documents of these lengths."""
    import numpy

    writer_of, document_of, stream_of = shard_writer()
    folder.mkdir(parents=True, exist_ok=True)
    writer = writer_of(folder, shard_tokens=1 << 22, labelled=False)
    random = numpy.random.default_rng(seed)
    for length in lengths:
        ids = random.integers(3, vocabulary, length, dtype=numpy.int32)
        ids[-1] = END
        writer.add(document_of(student=stream_of(ids=ids, mask=numpy.ones(length, numpy.uint8))))
    digest = hashlib.sha256(f"random {vocabulary}".encode()).hexdigest()
    writer.finish({"tokenizer": {"digest": digest, "vocabulary": vocabulary, "end_of_sequence": END, "padding": 0}})
    return folder


def write_model(folder: Path, shape: Shape, vocabulary: int, *, seed: int, dtype: str = "float32", spread: float = 0.02,
                device: str = "cpu", positions: int = 4096, experts: tuple[int, int] | None = None) -> Path:  # fmt: skip
    """A Qwen3 folder as of the hub, its head tied to its embedding, drawn on `device` (a CPU needs minutes for 1.7B).
    `experts`: how many each layer has in the place of its MLP, and how many a token goes to."""
    import torch
    from safetensors.torch import save_file

    s, kind = shape, getattr(torch, dtype)
    draw = torch.Generator(device).manual_seed(seed)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw, device=device).mul_(spread).to(kind).cpu()

    queries, keys = s.heads * s.head_size, s.kv_heads * s.head_size
    weights = {"model.embed_tokens.weight": drawn(vocabulary, s.width), "model.norm.weight": torch.ones(s.width, dtype=kind)}
    for layer in range(s.layers):
        sizes = {"self_attn.q_proj": (queries, s.width), "self_attn.k_proj": (keys, s.width), "self_attn.v_proj": (keys, s.width),
                 "self_attn.o_proj": (s.width, queries)}  # fmt: skip
        places = [f"mlp.experts.{expert}" for expert in range(experts[0])] if experts else ["mlp"]
        for place in places:
            sizes |= {f"{place}.gate_proj": (s.inner, s.width), f"{place}.up_proj": (s.inner, s.width), f"{place}.down_proj": (s.width, s.inner)}
        if experts:
            sizes["mlp.gate"] = (experts[0], s.width)
        ones = {"input_layernorm": s.width, "post_attention_layernorm": s.width, "self_attn.q_norm": s.head_size, "self_attn.k_norm": s.head_size}
        weights |= {f"model.layers.{layer}.{name}.weight": drawn(*size) for name, size in sizes.items()}
        weights |= {f"model.layers.{layer}.{name}.weight": torch.ones(size, dtype=kind) for name, size in ones.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": s.width,
        "intermediate_size": s.inner, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_size, "max_position_embeddings": positions, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
        "attention_dropout": 0.0, "use_sliding_window": False, "sliding_window": None, "bos_token_id": 1, "eos_token_id": END,
        "torch_dtype": dtype,
    }  # fmt: skip
    if experts:
        config |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": experts[0], "norm_topk_prob": True,
                   "num_experts_per_tok": experts[1], "moe_intermediate_size": s.inner, "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def write_recipe(file: Path, keys: dict[str, object]) -> Path:
    """{"train.steps": "5 steps"} as an ini file."""
    sections: dict[str, list[str]] = {}
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f"{name} = {value}\n")
    file.write_text("".join(f"[{section}]\n{''.join(lines)}" for section, lines in sections.items()))
    return file


def train_lines(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "train"]


def digests(run: Path) -> dict[str, str]:
    """Of all weights and optimizer states that a run ended with: equal ones are equal bits."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1:]
    files = [file for folder in [run / "final", *newest] for file in sorted(folder.glob("*.safetensors"))]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
