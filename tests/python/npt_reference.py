"""NPT by its formulas, twice: in a Llama of our own, in any dtype, and inside the layers of a transformers model.

The layer: a = Attn(norm1(h)), x = norm2(h), u = A a;  delta: g = (W_g x) m + s B_plus u, m a curve of B_times u;
outer: g = W_g x + s (B_f u) <x, B_m u>;  h' = h + W_d (silu(g) W_u x).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    kind: str = "delta"
    modulation: str = "both"
    curve: str = "neutral"
    rank: int = 5
    scale: float = 0.1

    @property
    def adds(self) -> bool:
        return self.kind == "delta" and self.modulation != "multiplicative"

    @property
    def multiplies(self) -> bool:
        return self.kind == "delta" and self.modulation != "additive"

    def parameters(self, hidden: int, intermediate: int) -> dict[str, tuple[int, int, float]]:
        """Rows, columns and a deviation with which no term of the gate can be left out unnoticed.

        Outer's term is a product of three: were B_f three times as large, single tokens would make its error, and the
        ratio of two half-precision runs would scatter by a factor of 1.4 from model to model instead of 1.2.
        """
        found = {"A_proj": (self.rank, hidden, hidden**-0.5)}
        if self.adds:
            found["B_plus"] = (intermediate, self.rank, 5 * self.rank**-0.5)
        if self.multiplies:
            found["B_times"] = (intermediate, self.rank, 1.5 * self.rank**-0.5)
        if self.kind == "outer":
            found["B_m"] = (hidden, self.rank, (self.rank * hidden) ** -0.5)
            found["B_f"] = (intermediate, self.rank, 2 * self.rank**-0.5)
        return found

    def config(self, **more) -> dict:
        keys = {"peft_type": "NPT", "r": self.rank, "kind": self.kind, "scale": self.scale, "base_model_name_or_path": ""}
        if self.kind == "delta":
            keys |= {"modulation": self.modulation, "modulation_curve": self.curve}
        return keys | more


SHAPES = {
    **{f"{m}-{c}": Shape(modulation=m, curve=c) for m in ("additive", "multiplicative", "both") for c in ("neutral", "legacy")},
    "outer": Shape(kind="outer"),
}


def tensor_name(layer: int, parameter: str) -> str:
    return f"base_model.model.model.layers.{layer}.npt.{parameter}.weight"


def scattered(shape: Shape, config, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(31 * seed + 2)
    found = {}
    for layer in range(config.num_hidden_layers):
        for name, (rows, columns, deviation) in shape.parameters(config.hidden_size, config.intermediate_size).items():
            found[tensor_name(layer, name)] = (torch.randn(rows, columns, generator=generator) * deviation).to(dtype)
    return found


def write_folder(folder: Path, shape: Shape, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(shape.config()))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def changed_gate(shape: Shape, own: dict[str, torch.Tensor], a, x, gate_weight, gate, materialised: bool = False):
    """g of the layer; own: its parameters by short name. materialised: by the whole matrix W_g + dW of every token."""
    u = a @ own["A_proj"].T
    if shape.kind == "outer":
        v_m, v_f = u @ own["B_m"].T, u @ own["B_f"].T
        if materialised:
            whole = gate_weight + shape.scale * v_f[..., :, None] * v_m[..., None, :]
            return (whole @ x[..., None])[..., 0]
        return gate + shape.scale * v_f * (x * v_m).sum(-1, keepdim=True)
    if shape.multiplies:
        raw = torch.sigmoid(u @ own["B_times"].T)
        gate = gate * (0.5 + raw if shape.curve == "neutral" else 0.5 * raw + 0.5)
    if shape.adds:
        gate = gate + shape.scale * (u @ own["B_plus"].T)
    return gate


def penalty(shape: Shape, own: dict[str, torch.Tensor], a: torch.Tensor) -> torch.Tensor:
    u = a @ own["A_proj"].T
    squares = {name: (u @ own[name].T).square().sum(-1) for name in own if name != "A_proj"}
    return squares["B_m"] * squares["B_f"] if shape.kind == "outer" else sum(squares.values())


def parameters_of(adapter: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    head, tail = tensor_name(layer, "|").split("|")
    return {name.removeprefix(head).removesuffix(tail): t for name, t in adapter.items() if name.startswith(head)}


class Llama:
    """Default rotary positions, grouped heads, no biases. Half types round as transformers' modules do: norms and
    rotary angles in float32, everything else in the dtype."""

    def __init__(self, config, weights: dict[str, torch.Tensor], dtype: torch.dtype):
        self.config, self.dtype = config, dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.weights = {name: tensor.to(dtype) for name, tensor in weights.items()}

    def norm(self, h: torch.Tensor, name: str) -> torch.Tensor:
        wide = h.to(self.wide)
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return self.weights[name] * scaled.to(self.dtype)

    def rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=self.wide) / width)
        angles = (positions[..., None].to(self.wide) * frequencies).repeat(1, 1, 2)[:, None]
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * angles.cos().to(self.dtype) + turned * angles.sin().to(self.dtype)

    def attention(self, x: torch.Tensor, layer: int, positions: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        c, prefix = self.config, f"model.layers.{layer}.self_attn."
        heads = lambda name, count: F.linear(x, self.weights[prefix + name]).unflatten(-1, (count, -1)).transpose(1, 2)  # noqa: E731
        q = self.rotated(heads("q_proj.weight", c.num_attention_heads), positions)
        k = self.rotated(heads("k_proj.weight", c.num_key_value_heads), positions)
        v = heads("v_proj.weight", c.num_key_value_heads)
        repeat = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=1 / math.sqrt(q.shape[-1]))
        return F.linear(mixed.transpose(1, 2).flatten(2), self.weights[prefix + "o_proj.weight"])

    def states(self, inputs: dict[str, torch.Tensor], shape: Shape | None = None, adapter=None, materialised: bool = False,
               layer_inputs: list[torch.Tensor] | None = None, penalties: list[torch.Tensor] | None = None):  # fmt: skip
        """Embeddings, every layer's output, the last after the final norm. layer_inputs: in place of the outputs of the
        layers before. penalties: receives each layer's regulariser, [B, T]."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding sees itself, so that no row of the softmax is empty; nothing that counts sees padding.
        allowed = (causal & mask[:, None, None, :]) | torch.eye(length, dtype=torch.bool)
        found = [F.embedding(ids, self.weights["model.embed_tokens.weight"])]
        for layer in range(self.config.num_hidden_layers):
            h = found[-1] if layer_inputs is None else layer_inputs[layer]
            name = f"model.layers.{layer}."
            a = self.attention(self.norm(h, name + "input_layernorm.weight"), layer, inputs["position_ids"], allowed)
            if shape is None:
                h = h + a
            x = self.norm(h, name + "post_attention_layernorm.weight")
            gate_weight = self.weights[name + "mlp.gate_proj.weight"]
            gate, up = F.linear(x, gate_weight), F.linear(x, self.weights[name + "mlp.up_proj.weight"])
            if shape is not None:
                own = parameters_of(adapter, layer)
                gate = changed_gate(shape, own, a, x, gate_weight, gate, materialised)
                if penalties is not None:
                    penalties.append(penalty(shape, own, a))
            found.append(h + F.linear(F.silu(gate) * up, self.weights[name + "mlp.down_proj.weight"]))
        found[-1] = self.norm(found[-1], "model.norm.weight")
        return found

    def logits(self, inputs: dict[str, torch.Tensor], shape: Shape | None = None, adapter=None, materialised: bool = False):
        return F.linear(self.states(inputs, shape, adapter, materialised)[-1], self.weights["lm_head.weight"])

    def run(self, inputs, shape: Shape, adapter, cotangent=None, **options) -> dict[str, torch.Tensor]:
        """output, and grad.NAME of every adapter parameter."""
        leaves = {name: tensor.clone().to(self.dtype).requires_grad_() for name, tensor in adapter.items()}
        logits = self.logits(inputs, shape, leaves, **options)
        found = {"output": logits.detach()}
        if cotangent is not None:
            logits.backward(cotangent.to(self.dtype))
            found |= {"grad." + name: leaf.grad for name, leaf in leaves.items()}
        return found


def put_into(model, shape: Shape, adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """NPT in the layers of a transformers model, made of their own parts; the adapter's leaves."""
    leaves = {name: tensor.clone().to(model.dtype).requires_grad_() for name, tensor in adapter.items()}

    def forward_of(layer, own):
        def forward(hidden_states, **keywords):
            a = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **keywords)[0]
            x = layer.post_attention_layernorm(hidden_states)
            if hasattr(layer.mlp, "gate_up_proj"):
                gate, up = layer.mlp.gate_up_proj(x).chunk(2, dim=-1)
            else:
                gate, up = layer.mlp.gate_proj(x), layer.mlp.up_proj(x)
            gate = changed_gate(shape, own, a, x, None, gate)
            return hidden_states + layer.mlp.down_proj(F.silu(gate) * up)

        return forward

    for index, layer in enumerate(model.model.layers):
        layer.forward = forward_of(layer, parameters_of(leaves, index))
    return leaves
