"""limbeck consolidate: W_g += alpha mean(v_f) mean(v_m)^T over a data set, against the same sum in float64."""

from __future__ import annotations

import json
from pathlib import Path

import model_zoo
import pytest
import test_adapters
import token_rows
import torch
from limbeck_runner import LimbeckError
from npt_reference import SHAPES, Llama, Shape, parameters_of
from safetensors.torch import load_file
from test_npt import FAMILY, Adapted

LENGTH, ROWS = 16, 4
GATE = "model.layers.{}.mlp.gate_proj.weight"


class Case(Adapted):
    """An adapter, and a data set of which no document is longer than a row and none fills the last batch."""

    def __init__(self, shape: Shape, folder: Path, dtype: torch.dtype = torch.float32):
        super().__init__(shape, folder, dtype)
        self.documents = token_rows.random_documents(27, 3, LENGTH, model_zoo.VOCABULARY, seed=9)
        self.data = token_rows.write(folder / "data", self.documents, model_zoo.VOCABULARY)
        self.out = folder / "out"

    def consolidate(self, limbeck, *flags: str, **keys) -> dict:
        report = self.folder.parent / "consolidate.json"
        options = {"model": self.base, "adapter": self.folder, "data": self.data, "output": self.out, "json": report,
                   "batch-size": ROWS, "sequence-length": LENGTH, "packing": "padded"} | keys  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
        limbeck.run("consolidate", *arguments, *flags)
        return json.loads(report.read_text())["result"]

    def low(self, pieces: list[list[int]]) -> list[torch.Tensor]:
        """u = A a of every token of each layer in float64, [tokens, r]: one piece at a time, so nothing is padded."""
        model = Llama(self.config, self.weights, torch.float64)
        own = {name: tensor.double() for name, tensor in self.tensors.items()}
        found: list[list[torch.Tensor]] = [[] for _ in range(self.config.num_hidden_layers)]
        for ids in pieces:
            rows = torch.tensor([ids])
            positions = torch.arange(len(ids))[None]
            inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "position_ids": positions}
            states = model.states(inputs, self.shape, own)
            seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
            for layer, kept in enumerate(found):
                normed = model.norm(states[layer], f"model.layers.{layer}.input_layernorm.weight")
                a = model.attention(normed, layer, positions, seen)
                kept.append((a @ parameters_of(own, layer)["A_proj"].T)[0])
        return [torch.cat(kept) for kept in found]

    def changes(self, pieces: list[list[int]], alpha: float) -> dict[str, torch.Tensor]:
        own = {name: tensor.double() for name, tensor in self.tensors.items()}
        found = {}
        for layer, low in enumerate(self.low(pieces)):
            parts = parameters_of(own, layer)
            v_f, v_m = (low @ parts["B_f"].T).mean(0), (low @ parts["B_m"].T).mean(0)
            found[GATE.format(layer)] = alpha * torch.outer(v_f, v_m)
        return found


def check_weights(case: Case, changes: dict[str, torch.Tensor], result: dict) -> None:
    """The gates by the formula: a forward in float32 differs from float64 by 1e-5, and each weight is rounded once.
    Everything else has its bits."""
    before, after = case.weights, load_file(case.out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if name not in changes:
            assert torch.equal(after[name], weight), name
            continue
        change = changes[name]
        wanted, got = weight.double() + change, after[name].double()
        rounding = float((wanted.to(weight.dtype).double() - wanted).norm() / change.norm())
        error = float((got - wanted).norm() / change.norm())
        assert change.norm() > 0.001 * weight.double().norm(), "a change that could be missed"
        assert error <= rounding + 2e-5, (name, error, rounding)
        said = result["changed"][name.removesuffix(".weight")]
        assert said["change"] == pytest.approx(float(change.norm() / weight.double().norm()), rel=1e-4)
        assert said["lost"] == pytest.approx(rounding, rel=0.1)
    assert result["worst_loss"] == max(said["lost"] for said in result["changed"].values())
    assert result["changed"].keys() == {name.removesuffix(".weight") for name in changes}


@pytest.mark.parametrize(("batches", "alpha"), [(None, None), (3, 0.5)])
def test_the_gates_get_the_product_of_the_means(limbeck, tmp_path, batches, alpha):
    case = Case(SHAPES["outer"], tmp_path)
    result = case.consolidate(limbeck, batches=batches, alpha=alpha)
    pieces = case.documents if batches is None else case.documents[: batches * ROWS]
    check_weights(case, case.changes(pieces, alpha or 0.1), result)
    assert result["batches"] == (batches or 7) and result["tokens"] == sum(map(len, pieces))
    assert result["alpha"] == (alpha or 0.1)
    logits = [limbeck.forward(folder, case.inputs.tensors)["logits"] for folder in (case.base, case.out)]
    assert not torch.equal(*logits)


def test_packed_rows_count_every_token_in_its_own_document(limbeck, tmp_path):
    case = Case(SHAPES["outer"], tmp_path)
    result = case.consolidate(limbeck, packing="packed")
    tokens = [(number, token) for number, document in enumerate(case.documents) for token in document]
    pieces = []
    for begin in range(0, result["tokens"], LENGTH):  # what of each document is in a row
        row = tokens[begin : begin + LENGTH]
        for number in dict.fromkeys(number for number, _ in row):
            pieces.append([token for other, token in row if other == number])
    assert sum(map(len, pieces)) == result["tokens"] > len(tokens) - LENGTH
    check_weights(case, case.changes(pieces, 0.1), result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_say_what_rounding_took(limbeck, tmp_path, dtype):
    """The means come from a forward in the half type; what was lost is that of the stored weights."""
    case = Case(SHAPES["outer"], tmp_path, dtype)
    result = case.consolidate(limbeck)
    after, changes = load_file(case.out / "model.safetensors"), case.changes(case.documents, 0.1)
    for name, change in changes.items():
        assert after[name].dtype == dtype
        wanted = case.weights[name].double() + change
        rounding = float((wanted.to(dtype).double() - wanted).norm() / change.norm())
        error = float((after[name].double() - wanted).norm() / change.norm())
        said = result["changed"][name.removesuffix(".weight")]
        # Another mean rounds other weights, so that the two agree as two samples of one scatter do.
        assert said["lost"] == pytest.approx(rounding, rel=0.25) and said["lost"] > 1e-3
        forward = 20 * torch.finfo(dtype).eps  # of the means: a forward of three layers in the half type
        assert error <= said["lost"] + forward, (name, error, said)
        assert said["change"] == pytest.approx(float(change.norm() / case.weights[name].double().norm()), rel=forward)
    assert load_file(case.out / "model.safetensors").keys() == case.weights.keys()


def test_the_same_command_gives_the_same_bits(limbeck, tmp_path):
    case = Case(SHAPES["outer"], tmp_path)
    case.consolidate(limbeck)
    case.consolidate(limbeck, output=tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (case.out / "model.safetensors").read_bytes()


REFUSED = {
    "no data": ({"data": None}, 2, "data"),
    "no such data": ({"data": "/nowhere"}, 3, "/nowhere"),
    "quantized": ({"quantize": "nf4"}, 2, "[model.layers.0.mlp.gate_proj] is stored in nf4"),
    "nothing of it": ({"alpha": 0}, 2, "alpha"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_consolidated_is_refused(limbeck, tmp_path, name):
    keys, code, message = REFUSED[name]
    refused(limbeck, Case(SHAPES["outer"], tmp_path), code, message, **keys)


def test_a_delta_adapter_is_refused(limbeck, tmp_path):
    refused(limbeck, Case(SHAPES["both-neutral"], tmp_path), 2, "is of kind delta, which adds no matrix to a weight")


def test_a_lora_folder_is_refused(limbeck, tmp_path):
    (tmp_path / "lora").mkdir()
    lora = test_adapters.Adapted("lora", tmp_path / "lora")
    refused(limbeck, Case(SHAPES["outer"], tmp_path), 2, "is no NPT adapter", adapter=lora.folder)


def test_data_of_another_vocabulary_are_refused(limbeck, tmp_path):
    case = Case(SHAPES["outer"], tmp_path)
    data = token_rows.write(tmp_path / "wide", [[5, FAMILY.config().vocab_size + 3, 2]], 2 * model_zoo.VOCABULARY)
    refused(limbeck, case, 3, "the vocabulary of the", data=data)


def refused(limbeck, case: Case, code: int, message: str, **keys) -> None:
    with pytest.raises(LimbeckError) as failure:
        case.consolidate(limbeck, **keys)
    text = str(failure.value)
    assert text.startswith(f"exit {code}") and message in text.split("\n", 1)[1], text
    assert not case.out.exists()
