"""Packed documents compute what each computes alone: no attention, no position and no gradient crosses a boundary."""

from functools import lru_cache

import model_zoo
import parity_measures
import pytest
import torch
import transformers_reference as reference
from model_zoo import Family, Inputs
from test_parity_float32 import GRADIENT_BAR, OUTPUT_BAR

# Two rows of 33. All documents are longer than the sliding windows and than original_max_position_embeddings of the
# longrope models, and none is longer than max_position_embeddings of the dynamic one, though the rows are: the scaling
# must follow the positions and not the width of the row.
ROWS = ((11, 9, 12), (16, 14))
WIDTH = 33
DECODERS = pytest.mark.parametrize("family", model_zoo.DECODERS, ids=lambda family: family.name)


def make_documents(seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(86028121 * seed + 13)

    def document(length: int) -> torch.Tensor:
        return torch.randint(model_zoo.FIRST_TOKEN, model_zoo.VOCABULARY, (length,), generator=generator)

    return [[document(length) for length in row] for row in ROWS]


def pack(documents: list[list[torch.Tensor]], width: int) -> dict[str, torch.Tensor]:
    """input_ids, document_ids (0 is padding) and position_ids, which begin anew with each document."""
    names = ("input_ids", "document_ids", "position_ids")
    packed = {name: torch.zeros(len(documents), width, dtype=torch.int64) for name in names}
    for row, items in enumerate(documents):
        start = 0
        for number, document in enumerate(items, start=1):
            span = slice(start, start + len(document))
            packed["input_ids"][row, span] = document
            packed["document_ids"][row, span] = number
            packed["position_ids"][row, span] = torch.arange(len(document))
            start = span.stop
    return packed


def alone(documents: list[list[torch.Tensor]]) -> Inputs:
    """One document a row, padded on the right."""
    flat = [document for items in documents for document in items]
    width = max(len(document) for document in flat)
    ids = torch.stack([torch.nn.functional.pad(document, (0, width - len(document))) for document in flat])
    mask = torch.stack([(torch.arange(width) < len(document)).long() for document in flat])
    return Inputs(
        {"input_ids": ids, "attention_mask": mask, "position_ids": model_zoo.positions_from_mask(mask)}
    )


@lru_cache(maxsize=None)
def _runs(limbeck, family: Family, folder: str):
    documents = make_documents()
    packed, single = pack(documents, WIDTH), alone(documents)
    cotangent = model_zoo.make_cotangent(single, (*single.valid.shape, model_zoo.VOCABULARY))
    packed_cotangent = torch.zeros(*packed["input_ids"].shape, model_zoo.VOCABULARY)
    packed_cotangent[packed["document_ids"] > 0] = cotangent[single.valid]  # both in the order of the documents
    got = limbeck.forward(folder, {**packed, "output_gradient": packed_cotangent}, gradients=True)
    parity_measures.demand_finite(got)
    wanted = reference.forward(model_zoo.load(family, folder, torch.float32), family, single, cotangent=cotangent)
    return packed, single, got, wanted


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    @lru_cache(maxsize=None)
    def write(family: Family) -> str:
        return str(model_zoo.write_model(family, tmp_path_factory.mktemp(family.name)))

    return write


@DECODERS
def test_packed_documents_equal_transformers_on_each_alone(limbeck, folders, family):
    packed, single, got, wanted = _runs(limbeck, family, folders(family))
    packed_logits = got["logits"][packed["document_ids"] > 0]
    assert parity_measures.largest_error(packed_logits, wanted["logits"][single.valid]) <= OUTPUT_BAR


@DECODERS
def test_packed_documents_equal_limbeck_on_each_alone(limbeck, folders, family):
    packed, single, got, _ = _runs(limbeck, family, folders(family))
    separate = limbeck.forward(folders(family), single.tensors)["logits"][single.valid]
    packed_logits = got["logits"][packed["document_ids"] > 0]
    assert parity_measures.largest_error(packed_logits, separate) <= OUTPUT_BAR


@DECODERS
def test_packed_gradients_are_the_sum_over_documents(limbeck, folders, family):
    _, _, got, wanted = _runs(limbeck, family, folders(family))
    errors = parity_measures.gradient_errors(got, wanted)
    assert {name: error for name, error in errors.items() if error > GRADIENT_BAR} == {}


def test_without_document_ids_the_documents_would_mix(limbeck, folders):
    """Shows that the tests above can fail: the same row as one document gives other logits."""
    family = model_zoo.BY_NAME["llama3"]
    packed, single, _, wanted = _runs(limbeck, family, folders(family))
    mask = (packed["document_ids"] > 0).long()
    mixed = limbeck.forward(
        folders(family),
        {
            "input_ids": packed["input_ids"],
            "attention_mask": mask,
            "position_ids": packed["position_ids"],
        },
    )["logits"][mask.bool()]
    assert parity_measures.largest_error(mixed, wanted["logits"][single.valid]) > 100 * OUTPUT_BAR
