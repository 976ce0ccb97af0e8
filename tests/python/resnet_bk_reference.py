"""ResNet-BK in plain PyTorch, written from its formulas and nothing of Limbeck's: the resolvent's diagonal comes from dense
complex128 inverses, whose gradients are autograd's. It has the form of a transformers model, so that the zoo holds it too.

A layer is x + MLP(n) + scale W_o [Re G, Im G] with n = LayerNorm(x), v = clamp(W_v n + b, +-bk_clamp) and G the diagonal of
(T - i bk_z)^-1, T = tridiag(1; v - 2; 1); causal: of each leading matrix the last element of that diagonal. With
bk_activations = int8 v of a token is seen as 8-bit codes over its heads, and so are the real and the imaginary parts of its G; of one head
as codes of what bounds them, bk_clamp and 1 / bk_z.
"""

from __future__ import annotations

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

DENSE = 40  # tokens up to which inverses are dense; long generations take the recurrence that follows from them


class ResNetBKConfig(PreTrainedConfig):
    model_type = "resnet_bk"

    def __init__(self, vocab_size=517, hidden_size=64, num_hidden_layers=3, intermediate_size=128, max_position_embeddings=512,
                 num_experts=0, num_experts_per_tok=2, initializer_range=0.02, bk_heads=1, bk_z=1.0, bk_clamp=3.0, bk_activations="float", layer_norm_eps=1e-5, mlp_bias=True,
                 output_bias=False, head_bias=False, pad_token_id=None, tie_word_embeddings=False, **rest):  # fmt: skip
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.intermediate_size, self.max_position_embeddings = intermediate_size, max_position_embeddings
        self.num_experts, self.num_experts_per_tok = num_experts, num_experts_per_tok
        self.bk_heads, self.bk_z, self.bk_clamp, self.layer_norm_eps = bk_heads, bk_z, bk_clamp, layer_norm_eps
        self.initializer_range, self.bk_activations = initializer_range, bk_activations
        self.mlp_bias, self.output_bias, self.head_bias = mlp_bias, output_bias, head_bias
        self.pad_token_id = pad_token_id
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **rest)


def green_diagonal(diagonal: torch.Tensor, coupled: torch.Tensor, height: float, causal: bool) -> torch.Tensor:
    """diagonal [B,H,T], coupled [B,T-1] (whether two neighbours are) -> complex128 [B,H,T]."""
    ones = coupled.to(torch.complex128)[:, None].expand(-1, diagonal.shape[1], -1)
    shifted = diagonal.to(torch.complex128) - 1j * height
    if causal and diagonal.shape[-1] > DENSE:
        return by_recurrence(shifted, ones)
    matrix = torch.diag_embed(shifted) + torch.diag_embed(ones, 1) + torch.diag_embed(ones, -1)
    if not causal:
        return torch.linalg.inv(matrix).diagonal(dim1=-2, dim2=-1)
    # All leading matrices at once, each with ones behind it on the diagonal; of the inverse of the t-th its entry t.
    at = torch.arange(diagonal.shape[-1])
    inside = torch.maximum(at[:, None], at) <= at[:, None, None]
    leading = torch.where(inside, matrix[..., None, :, :], torch.eye(len(at), dtype=matrix.dtype))
    return torch.linalg.inv(leading).diagonal(dim1=-2, dim2=-1)[..., at, at]


def by_recurrence(shifted: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
    """Without gradients. numpy, whose calls cost little: a generation makes ten thousands of them."""
    rows, beside = shifted.numpy(), ones.numpy()
    found = numpy.empty_like(rows)
    for t in range(rows.shape[-1]):
        found[..., t] = 1 / (rows[..., t] - (beside[..., t - 1] * found[..., t - 1] if t else 0))
    return torch.from_numpy(found)


class SeenAsCodes(torch.autograd.Function):
    """Of each row round(x / scale) scale with scale = max |x| / 127, its gradient straight through."""

    @staticmethod
    def forward(ctx, rows):
        scale = rows.abs().amax(-1, keepdim=True) / 127
        return (rows / scale).round() * scale

    @staticmethod
    def backward(ctx, grad):
        return grad


class SeenInSteps(torch.autograd.Function):
    """By one scale for all, bound / 127."""

    @staticmethod
    def forward(ctx, rows, bound):
        return (rows * (127 / bound)).round().clamp(-127, 127) * (bound / 127)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def distance_from_ties(rows: torch.Tensor, bounds: torch.Tensor) -> float:
    """How far, in steps, the value is from the middle of two codes that is nearest to one."""
    codes = rows.double() / (bounds.double() / 127)
    return float((codes - codes.floor() - 0.5).abs().min())


class Core(nn.Module):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.config, self.causal = config, causal
        self.nearest_tie = 1.0  # of the last forward

    def codes(self, rows, bound):
        if self.config.bk_activations == "float":
            return rows
        single = self.config.bk_heads == 1
        bounds = torch.tensor(bound) if single else rows.detach().abs().amax(-1, keepdim=True)
        self.nearest_tie = min(self.nearest_tie, distance_from_ties(rows.detach(), bounds))
        return SeenInSteps.apply(rows, bound) if single else SeenAsCodes.apply(rows)

    def forward(self, v, coupled):
        wide = v if v.dtype == torch.float64 else v.float()
        self.nearest_tie = 1.0
        clamped = self.codes(wide.clamp(-self.config.bk_clamp, self.config.bk_clamp), self.config.bk_clamp)
        green = green_diagonal(clamped.transpose(1, 2) - 2, coupled, self.config.bk_z, self.causal).transpose(1, 2)
        parts = [self.codes(part.to(wide.dtype), 1 / self.config.bk_z) for part in (green.real, green.imag)]
        return torch.stack(parts, -1).flatten(-2).to(v.dtype) * self.scale


class BK(nn.Module):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.v_proj = nn.Linear(config.hidden_size, config.bk_heads)
        self.core = Core(config, causal)
        self.o_proj = nn.Linear(2 * config.bk_heads, config.hidden_size, bias=config.output_bias)

    def forward(self, n, coupled):
        return self.o_proj(self.core(self.v_proj(n), coupled))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x):
        return self.down_proj(torch.relu(self.up_proj(x)))


class Gate(nn.Linear):
    """Gives what transformers' routers give: logits, chosen weights, chosen experts."""

    def __init__(self, config):
        super().__init__(config.hidden_size, config.num_experts, bias=config.mlp_bias)
        self.top_k = config.num_experts_per_tok

    def forward(self, x):
        logits = super().forward(x)
        best, chosen = (logits if logits.dtype == torch.float64 else logits.float()).topk(self.top_k, -1)
        return logits, best.softmax(-1), chosen


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = Gate(config)
        self.experts = nn.ModuleList(Mlp(config) for _ in range(config.num_experts))

    def forward(self, x):
        _, weights, chosen = self.gate(x)
        total = torch.zeros_like(x, dtype=weights.dtype)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1, keepdim=True)
            here = share[..., 0] > 0
            if here.any():
                total = total.index_put(here.nonzero(as_tuple=True), share[here] * expert(x[here]).to(share.dtype), accumulate=True)
        return total.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bk = BK(config, causal)
        self.mlp = Experts(config) if config.num_experts else Mlp(config)

    def forward(self, x, coupled):
        n = self.input_layernorm(x)
        return x + self.bk(n, coupled) + self.mlp(n)


class Trunk(nn.Module):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, causal) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ResNetBKModel(PreTrainedModel, GenerationMixin):
    config_class = ResNetBKConfig
    causal = True
    _supports_sdpa = True  # asked for by name; it has no attention

    def __init__(self, config):
        super().__init__(config)
        self.model = Trunk(config, self.causal)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, self.config.initializer_range)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name == "bias" else 1.0)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None, output_hidden_states=False, **_):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        x = self.model.embed_tokens(input_ids) + self.model.embed_positions(position_ids)
        coupled, hidden = attention_mask[:, 1:] == attention_mask[:, :-1], []
        for layer in self.model.layers:
            hidden.append(x)
            x = layer(x, coupled)
        hidden.append(self.model.norm(x))
        logits, loss = self.lm_head(hidden[-1]), None
        if labels is not None:
            seen, wanted = (logits[:, :-1], labels[:, 1:]) if self.causal else (logits, labels)
            loss = F.cross_entropy(seen.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=tuple(hidden) if output_hidden_states else None)


class ResNetBKForCausalLM(ResNetBKModel):
    pass


class ResNetBKForMaskedLM(ResNetBKModel):
    causal = False


AutoConfig.register(ResNetBKConfig.model_type, ResNetBKConfig)
AutoModelForCausalLM.register(ResNetBKConfig, ResNetBKForCausalLM)
AutoModelForMaskedLM.register(ResNetBKConfig, ResNetBKForMaskedLM)
