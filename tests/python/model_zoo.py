"""Tiny random transformers models of every family that Limbeck reads, and inputs that exercise padding.

A zoo model is built by transformers' own classes (ResNet-BK, which it lacks, by those of resnet_bk_reference.py), filled with weights large enough that a wrong formula shows, and
written with `save_pretrained`: what Limbeck reads is exactly what a user's folder looks like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import resnet_bk_reference

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Registered by transformers_reference.py: eager attention that is float64 throughout.
SOFTCAP_REFERENCE = "limbeck_softcap_reference"

VOCABULARY = 517  # odd on purpose: nothing may rely on a round vocabulary
FIRST_TOKEN = 3  # 0, 1 and 2 stay free for padding, begin and end of sequence
PAD = 0


@dataclass(frozen=True)
class Family:
    """One row of the parity table: how to build its config, and which kind of output it has."""

    name: str
    config_class: str
    model_class: str
    options: dict = field(default_factory=dict, hash=False)
    kind: str = "decoder"  # decoder, masked (language model), encoder (bare: last_hidden_state) or classifier
    attention: str = "sdpa"  # transformers' own default, except where that default computes another function
    experts: int = 0  # experts chosen per token; routing is discontinuous, see tests of half precision
    generation_options: dict | None = field(default=None, hash=False)  # where cached and uncached can agree

    def config(self, **extra):
        options = {**self.options, **extra}
        return _class_named(self.config_class)(**_fresh(options))

    @property
    def model(self) -> type[transformers.PreTrainedModel]:
        return _class_named(self.model_class)

    @property
    def output(self) -> str:
        return "last_hidden_state" if self.kind == "encoder" else "logits"


def _class_named(name: str) -> type:
    return getattr(resnet_bk_reference if name.startswith("ResNetBK") else transformers, name)


def _fresh(value):
    """Deep copy of plain containers: configs write into the dictionaries they are given."""
    if isinstance(value, dict):
        return {key: _fresh(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fresh(item) for item in value]
    return value


def _base(**options) -> dict:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": PAD,
        "tie_word_embeddings": False,
        **options,
    }


def _grouped(**options) -> dict:
    return _base(**{"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, **options})


def _rope(rope_type: str, **options) -> dict:
    return {"rope_type": rope_type, "rope_theta": 10000.0, **options}


def _llama(name: str, options: dict, **rest) -> Family:
    return Family(name, "LlamaConfig", "LlamaForCausalLM", options, **rest)


_LLAMA3_ROPE = _rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
# Eight pairs of a 16-wide head; the two lists differ enough that taking the wrong one fails at once.
_SHORT_FACTORS = [1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4]
_LONG_FACTORS = [1.1, 1.3, 1.7, 2.0, 2.6, 3.1, 3.7, 4.4]
_GEMMA = {
    "hidden_size": 96,  # its square root is no power of two: rounding of the embedding scale shows in bfloat16
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 20,  # neither head_dim nor hidden / heads
    "sliding_window": 8,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 64,
    "hidden_dim": 112,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
_RESNET_BK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}
_QWEN3_MOE = _grouped(head_dim=24, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48)
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_GEMMA3_SCALED_ROPE = {**_GEMMA3_ROPE, "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}
_GEMMA3_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: tuple[Family, ...] = (
    _llama("llama2", _base()),
    _llama("llama2-bias", _base(attention_bias=True, mlp_bias=True)),
    _llama("llama3", _grouped(rope_parameters=_LLAMA3_ROPE)),
    _llama("llama3-tied", _grouped(rope_parameters=_LLAMA3_ROPE, tie_word_embeddings=True)),
    _llama("llama-linear", _grouped(rope_parameters=_rope("linear", factor=4.0))),
    # Past max_position_embeddings the base grows with the longest position of the batch, so keys already in a cache
    # were rotated by another base than a recomputation would use: transformers' cached and uncached runs differ there
    # too. Generation is therefore tested below that length, the forward pass above it.
    _llama(
        "llama-dynamic",
        _grouped(rope_parameters=_rope("dynamic", factor=2.0), max_position_embeddings=16),
        generation_options={"max_position_embeddings": 256},
    ),
    _llama(
        "llama-yarn",
        _grouped(
            rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=2048),
            max_position_embeddings=8192,
        ),
    ),
    # Prompts of the generation test start beyond original_max_position_embeddings: the switch between the two factor
    # lists within one generation has the same cache problem as dynamic scaling.
    _llama(
        "llama-longrope",
        _grouped(
            rope_parameters=_rope(
                "longrope",
                short_factor=_SHORT_FACTORS,
                long_factor=_LONG_FACTORS,
                factor=2.0,
                original_max_position_embeddings=8,
            ),
            max_position_embeddings=16,
        ),
    ),
    Family("mistral", "MistralConfig", "MistralForCausalLM", _base(num_key_value_heads=2, head_dim=24, sliding_window=7)),
    Family("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _grouped(tie_word_embeddings=True)),
    Family(
        "qwen2-window",
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _grouped(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    Family("qwen3", "Qwen3Config", "Qwen3ForCausalLM", _grouped(head_dim=32, rope_parameters=_rope("default"))),
    Family(
        "qwen3-moe",
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**_QWEN3_MOE, "norm_topk_prob": True},
        experts=2,
    ),
    Family(
        "qwen3-moe-mixed",
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**_QWEN3_MOE, "norm_topk_prob": False, "mlp_only_layers": [0]},
        experts=2,
    ),
    Family(
        "mixtral",
        "MixtralConfig",
        "MixtralForCausalLM",
        _grouped(num_local_experts=5, num_experts_per_tok=2, intermediate_size=48),
        experts=2,
    ),
    # sdpa, the default, silently drops the attention softcap (sdpa_attention_forward takes no `softcap`): it computes
    # another function than the trained one, so eager is the reference, as the model's authors ask.
    Family(
        "gemma2",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _base(**_GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=6.0),
        attention="eager",
    ),
    Family(
        "gemma3",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _base(**_GEMMA, layer_types=_GEMMA3_LAYERS, rope_parameters=_GEMMA3_ROPE),
    ),
    Family(
        "gemma3-linear",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _base(**_GEMMA, layer_types=_GEMMA3_LAYERS, rope_parameters=_GEMMA3_SCALED_ROPE),
    ),
    Family("phi3", "Phi3Config", "Phi3ForCausalLM", _grouped(sliding_window=11)),
    Family(
        "phi3-partial-long",
        "Phi3Config",
        "Phi3ForCausalLM",
        _grouped(
            hidden_size=128,
            num_attention_heads=4,
            original_max_position_embeddings=8,
            max_position_embeddings=16,
            rope_parameters=_rope(
                "longrope", short_factor=_SHORT_FACTORS, long_factor=_LONG_FACTORS, partial_rotary_factor=0.5
            ),
        ),
    ),
    Family(
        "phi3-short",
        "Phi3Config",
        "Phi3ForCausalLM",
        _grouped(
            original_max_position_embeddings=256,
            max_position_embeddings=1024,
            rope_parameters=_rope("longrope", short_factor=_SHORT_FACTORS, long_factor=_LONG_FACTORS),
        ),
    ),
    Family(
        "gpt2",
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 160,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": PAD,
        },
    ),
    Family(
        "resnet-bk",
        "ResNetBKConfig",
        "ResNetBKForCausalLM",
        {**_RESNET_BK, "num_experts": 5, "num_experts_per_tok": 2, "bk_heads": 3, "bk_z": 0.4},
        experts=2,
    ),
    Family("resnet-bk-masked", "ResNetBKConfig", "ResNetBKForMaskedLM", {**_RESNET_BK, "output_bias": True, "head_bias": True}, kind="masked"),
    Family("bert", "BertConfig", "BertModel", _BERT, kind="encoder"),
    Family(
        "bert-classifier",
        "BertConfig",
        "BertForSequenceClassification",
        {**_BERT, "num_labels": 5},
        kind="classifier",
    ),
    Family("bert-masked", "BertConfig", "BertForMaskedLM", _BERT, kind="masked"),
    Family("distilbert", "DistilBertConfig", "DistilBertModel", _DISTILBERT, kind="encoder"),
    Family(
        "distilbert-classifier",
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {**_DISTILBERT, "num_labels": 5},
        kind="classifier",
    ),
    Family("distilbert-masked", "DistilBertConfig", "DistilBertForMaskedLM", _DISTILBERT, kind="masked"),
)
BY_NAME = {family.name: family for family in FAMILIES}
DECODERS = tuple(family for family in FAMILIES if family.kind == "decoder")


def _fill(name: str, parameter: torch.Tensor, config, generator: torch.Generator) -> None:
    """Random weights that keep every signal near one: queries and keys a little lower, so that softmax stays soft."""

    def normal(std: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std

    leaf = name.rsplit(".", 1)[-1]
    if leaf == "bias":
        parameter.copy_(normal(0.2))
    elif parameter.dim() == 1:
        centre = 0.0 if "gemma" in config.model_type else 1.0  # Gemma's norms multiply by 1 + weight
        parameter.copy_(centre + normal(0.3).clamp(-0.7, 0.7))
    elif any(part in name for part in ("embed", "wte", "wpe")):
        parameter.copy_(normal(1.6 / math.sqrt(parameter.shape[-1])))
    else:
        fan_in = parameter.shape[0] if config.model_type == "gpt2" and "lm_head" not in name else parameter.shape[-1]
        gain = 1.2 if any(part in name for part in ("q_proj", "k_proj", "query", "key", "q_lin", "k_lin")) else 1.6
        parameter.copy_(normal(gain / math.sqrt(fan_in)))


def write_model(family: Family, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> Path:
    """A model folder as `save_pretrained` writes it; with a half dtype the stored weights are rounded to it."""
    config = family.config(**options)
    generator = torch.Generator().manual_seed(7919 * seed + 17)
    model = family.model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied weight appears, and is filled, once
            _fill(name, parameter, config, generator)
    model.to(dtype).save_pretrained(folder)
    return Path(folder)


def load(family: Family, folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """As a user loads it. `from_pretrained` keeps rotary frequencies in float32, which `model.to(dtype)` would not."""
    options = {"dtype": dtype, "attn_implementation": family.attention, "local_files_only": True}
    if family.attention == "eager" and dtype == torch.float64:
        options["attn_implementation"] = SOFTCAP_REFERENCE
    if family.experts and dtype == torch.float64:
        options["experts_implementation"] = "eager"  # the default, grouped_mm, takes no float64
    return family.model.from_pretrained(folder, **options).eval()


@dataclass(frozen=True)
class Inputs:
    """A padded batch. `valid` [B,T] marks real tokens; only they are compared."""

    tensors: dict[str, torch.Tensor]

    @property
    def valid(self) -> torch.Tensor:
        return self.tensors["attention_mask"].bool()


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 0)


def make_inputs(family: Family, *, seed: int = 0, batch: int = 3, length: int = 32) -> Inputs:
    """Row 0 full, row 1 padded on the left, row 2 on the right, and so on in turn; position_ids are explicit."""
    generator = torch.Generator().manual_seed(104729 * seed + 5)
    ids = torch.randint(FIRST_TOKEN, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1::3, : length // 5] = 0
    mask[2::3, length - length // 4 :] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from_mask(mask)}
    if family.config_class == "BertConfig":
        tensors["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(batch, -1).contiguous()
    return Inputs(tensors)


def make_labels(family: Family, inputs: Inputs, *, seed: int = 0) -> torch.Tensor:
    """Decoders: the tokens themselves, padding and a few others ignored. Classifiers: one class a row."""
    generator = torch.Generator().manual_seed(611953 * seed + 3)
    ids = inputs.tensors["input_ids"]
    if family.kind == "classifier":
        return torch.randint(0, 5, (ids.shape[0],), generator=generator)
    dropped = torch.rand(ids.shape, generator=generator) < 0.15
    if family.kind == "masked":  # most tokens are no targets; each is predicted where it stands
        return ids.masked_fill(~inputs.valid | ~dropped, -100)
    # The first real token of a left-padded row would be predicted from a padded position.
    first = inputs.valid & (torch.nn.functional.pad(inputs.valid, (1, 0))[:, :-1].logical_not())
    return ids.masked_fill(~inputs.valid | dropped | first, -100)


def make_cotangent(inputs: Inputs, shape: tuple[int, ...], *, seed: int = 0) -> torch.Tensor:
    """Random float32 gradient of the output, zero where tokens are padding."""
    generator = torch.Generator().manual_seed(15485863 * (seed + 1))
    cotangent = torch.randn(shape, generator=generator)
    if len(shape) == 3:
        cotangent = cotangent * inputs.valid[..., None]
    return cotangent


