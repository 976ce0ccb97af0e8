"""What transformers computes, in the form in which `limbeck forward` writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.core_model_loading import revert_weight_conversion
from transformers.masking_utils import eager_mask

from model_zoo import SOFTCAP_REFERENCE, Family, Inputs


def _softcap_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **_):
    """Gemma 2's attention wholly in the dtype of its inputs.

    transformers' eager form takes its softmax in float32 even in a float64 model; the float64 mask value overflows to
    -inf there, and a left-padded row becomes NaN and spreads. This form stays in float64 and finite.
    """
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(SOFTCAP_REFERENCE, _softcap_attention)
AttentionMaskInterface.register(SOFTCAP_REFERENCE, eager_mask)


def gradients_by_checkpoint_name(model) -> dict[str, torch.Tensor]:
    """Every parameter's gradient under the name its weight has in model.safetensors.

    transformers 5 keeps experts fused in memory and splits them when it saves; its own conversion is applied to the
    gradients. A tied weight comes once, with the sum. A parameter the output does not depend on is left out.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.clone() for name, grad in revert_weight_conversion(model, gradients).items()}


def token_losses(family: Family, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B,T-1] for decoders (entry t: position t predicting labels[t+1]), [B,T] for masked models, [B] for classifiers."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if family.kind == "classifier":
        return F.cross_entropy(logits, labels, reduction="none")
    if family.kind == "masked":
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)


def forward(
    model,
    family: Family,
    inputs: Inputs,
    *,
    cotangent: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    hidden: bool = False,
    loss_gradients: bool = False,
) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    extra = {"labels": labels} if labels is not None else {}
    extra |= {"use_cache": False} if family.kind == "decoder" else {}
    backward = cotangent is not None or loss_gradients
    with torch.set_grad_enabled(backward):
        output = model(**inputs.tensors, **extra, output_hidden_states=hidden)
        main = output[family.output]
        if cotangent is not None:
            main.backward(cotangent.to(main.dtype))
        elif loss_gradients:
            output.loss.backward()
    result = {family.output: main.detach()}
    if labels is not None:
        result["loss"] = output.loss.detach()
        result["token_loss"] = token_losses(family, main.detach(), labels)
    if hidden:
        result |= {f"hidden.{i}": state.detach() for i, state in enumerate(output.hidden_states)}
    if backward:
        result |= {f"grad.{name}": grad for name, grad in gradients_by_checkpoint_name(model).items()}
    return result
