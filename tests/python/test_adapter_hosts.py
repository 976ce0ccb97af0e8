"""What is particular to adapters of embeddings and of expert stacks; their values and gradients: test_adapters.py."""

from __future__ import annotations

import parity_measures
import pytest
from limbeck_runner import LimbeckError
from safetensors.torch import load_file, save_file
from test_adapters import OUTPUT_BAR, Adapted, tensors_with


def test_a_table_that_peft_saved_beside_the_adapter_must_be_the_models(limbeck, tmp_path):
    """save_embedding_layers = True: embeddings and head, adapted or not."""
    adapted = Adapted("lora", tmp_path)
    adapted.model.save_pretrained(adapted.folder, save_embedding_layers=True)
    file = adapted.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.embed_tokens.weight"
    assert name in tensors and "base_model.model.lm_head.weight" in tensors
    wanted = adapted.compared(adapted.theirs()["output"])
    got = limbeck.forward(adapted.base, adapted.inputs.tensors, adapter=adapted.folder)[adapted.family.output]
    assert parity_measures.largest_error(adapted.compared(got), wanted) <= OUTPUT_BAR
    tensors[name][5, 5] += 0.25
    save_file(tensors, file)
    with pytest.raises(LimbeckError, match=f"(?s)exit 4.*tensor {name} is not the weight of the model for model.embed_tokens"):
        limbeck.forward(adapted.base, adapted.inputs.tensors, adapter=adapted.folder)


@pytest.mark.parametrize("name", ["lora-embedding", "lora-experts"])
def test_a_quantized_base_takes_adapters_of_its_float_parts(limbeck, tmp_path, name):
    """Embeddings and experts stay float: the adapter is as far from PEFT's in int8 as the base is from transformers'."""
    adapted = Adapted(name, tmp_path)
    if adapted.family.experts:  # a token sent elsewhere has another error than rounding's
        adapted.inputs = parity_measures.inputs_clearly_routed_by(adapted.model, adapted.family, seed=0)
    error = {}
    for adapter in (adapted.folder, None):
        got, exact = (
            adapted.compared(limbeck.forward(adapted.base, adapted.inputs.tensors, quantize=quantize, adapter=adapter)[adapted.family.output])
            for quantize in ("int8", None)
        )  # fmt: skip
        if adapter:
            changed = exact
        error[adapter is not None] = parity_measures.relative_frobenius(got, exact)
    print(f"{name}: {error[True]:.2e} with the adapter, {error[False]:.2e} without")
    assert 0 < error[True] < 2 * error[False]
    assert parity_measures.relative_frobenius(exact, changed) > 10 * error[True], "the adapter changes next to nothing"


STACK = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_"
BAD_STACKS = {
    "one of two is missing": (lambda t: [t.pop(STACK + part) for part in ("A.weight", "B.weight")], f"the file has no {STACK}A.weight"),
    "no B": (lambda t: t.pop(STACK + "B.weight"), f"has {STACK}A.weight but no lora_B"),
    "a stack by its own name": (
        lambda t: t.update({STACK.replace("base_layer", "gate_up_proj") + "A.weight": t[STACK + "A.weight"].clone()}),
        "model.layers.1.mlp.experts.gate_up_proj is a stack of experts, whose tensors have the name of its module",
    ),
    "no A": (lambda t: t.pop(STACK + "A.weight"), f"has {STACK}B.weight but no lora_A"),
    "another number of experts": (
        lambda t: t.update({STACK + "A.weight": t[STACK + "A.weight"][:-5].contiguous()}),
        "model.layers.1.mlp.experts.gate_up_proj has lora_A [25,96], and adapter_config.json gives it rank 5",
    ),
}


@pytest.mark.parametrize("name", BAD_STACKS)
def test_what_is_wrong_with_stacks_is_refused_by_name(limbeck, tmp_path, name):
    change, message = BAD_STACKS[name]
    adapted = Adapted("lora-experts", tmp_path)
    tensors_with(change)(adapted.folder)
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(adapted.base, adapted.inputs.tensors, adapter=adapted.folder)
    assert str(refused.value).startswith("exit 4") and message in str(refused.value), refused.value
