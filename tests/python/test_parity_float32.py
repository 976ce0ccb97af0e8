"""float32: logits, hidden states, losses and every parameter's gradient equal transformers'.

The bars leave room for another order of summation and nothing else: transformers' own float32 runs differ from its
float64 runs by at most 5e-6 of the largest logit, and 9e-6 relative in the worst gradient, over all families here.
"""

import model_zoo
import parity_measures
import pytest
import torch
import transformers_reference as reference

OUTPUT_BAR = 2e-5  # of the largest entry
GRADIENT_BAR = 1e-4  # relative Frobenius
FAMILIES = pytest.mark.parametrize("family", model_zoo.FAMILIES, ids=lambda family: family.name)


@pytest.fixture
def parity(limbeck, family):
    return parity_measures.float32_parity(family)


@FAMILIES
def test_the_reference_is_precise_enough_to_judge_by(parity, family):
    assert parity.own_output <= OUTPUT_BAR / 3
    assert max(parity.own_gradients.values()) <= GRADIENT_BAR / 3


@FAMILIES
def test_output_equals_transformers(parity, family):
    assert parity.output <= OUTPUT_BAR


@FAMILIES
def test_every_hidden_state_equals_transformers(parity, family):
    assert {name: error for name, error in parity.hidden.items() if error > OUTPUT_BAR} == {}


@FAMILIES
def test_every_gradient_equals_transformers(parity, family):
    assert {name: error for name, error in parity.gradients.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("family", [f for f in model_zoo.FAMILIES if f.kind != "encoder"], ids=lambda f: f.name)
def test_losses_equal_transformers(parity, family):
    assert parity.token_loss <= OUTPUT_BAR
    assert parity.mean_loss <= OUTPUT_BAR


@pytest.mark.parametrize("name", ["llama3-tied", "gemma2", "mixtral", "bert-classifier", "distilbert-classifier", "bert-masked"])
def test_gradients_of_the_mean_loss_equal_transformers(limbeck, tmp_path, name):
    family = model_zoo.BY_NAME[name]
    path = model_zoo.write_model(family, tmp_path)
    batch = 1 if family.kind == "classifier" else 3  # a classifier's mean runs over rows that begin with padding, too
    inputs = model_zoo.make_inputs(family, batch=batch)
    labels = model_zoo.make_labels(family, inputs)
    model = model_zoo.load(family, path, torch.float32)
    wanted = reference.forward(model, family, inputs, labels=labels, loss_gradients=True)
    got = limbeck.forward(path, {**inputs.tensors, "labels": labels}, gradients=True)
    errors = parity_measures.gradient_errors(got, wanted)
    assert {name: error for name, error in errors.items() if error > GRADIENT_BAR} == {}


@pytest.mark.parametrize("name", ["llama3", "gpt2", "bert"])
def test_float64_run_agrees_to_the_precision_of_float32_norms(limbeck, tmp_path, name):
    """transformers keeps rotary angles and RMSNorm in float32 even in a float64 model, hence not 1e-15."""
    family = model_zoo.BY_NAME[name]
    path = model_zoo.write_model(family, tmp_path)
    inputs = model_zoo.make_inputs(family)
    wanted = reference.forward(model_zoo.load(family, path, torch.float64), family, inputs)[family.output]
    got = limbeck.forward(path, inputs.tensors, dtype=torch.float64)[family.output]
    assert got.dtype == torch.float64
    pick = parity_measures.compared
    assert parity_measures.largest_error(pick(family, inputs, got), pick(family, inputs, wanted)) <= 2e-6


@pytest.mark.parametrize("name", ["llama3", "mistral", "gpt2", "bert", "distilbert"])
def test_without_mask_and_positions_all_tokens_count(limbeck, tmp_path, name):
    family = model_zoo.BY_NAME[name]
    path = model_zoo.write_model(family, tmp_path)
    inputs = model_zoo.make_inputs(family, batch=1)
    bare = {"input_ids": inputs.tensors["input_ids"]}
    with torch.no_grad():
        wanted = model_zoo.load(family, path, torch.float32)(**bare)[family.output]
    got = limbeck.forward(path, bare)[family.output]
    assert parity_measures.largest_error(got, wanted) <= OUTPUT_BAR
