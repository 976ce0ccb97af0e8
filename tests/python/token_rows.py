"""Token shards of documents that a test makes up, and the batches that Limbeck cuts from them when nothing is shuffled."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from token_shards.encoding import EncodedDocument, Stream  # noqa: E402
from token_shards.shard_writer import ShardWriter  # noqa: E402

END, IGNORED = 2, -100


def random_documents(count: int, shortest: int, longest: int, vocabulary: int, seed: int) -> list[list[int]]:
    """A first-order chain over the ids: predictable enough that a loss can fall."""
    generator = numpy.random.default_rng(seed)
    step = generator.integers(1, 7, vocabulary)
    documents = []
    for _ in range(count):
        ids = [int(generator.integers(3, vocabulary))]
        for _ in range(int(generator.integers(shortest, longest + 1)) - 2):
            jump = step[ids[-1]] if generator.random() < 0.8 else generator.integers(1, vocabulary)
            ids.append(3 + int((ids[-1] + jump) % (vocabulary - 3)))
        documents.append([*ids, END])
    return documents


def write(folder: Path, documents: list[list[int]], vocabulary: int, classes: list[int] | None = None) -> Path:
    """`classes`: of each document, where they are labelled."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, shard_tokens=1 << 20, labelled=classes is not None)
    for number, ids in enumerate(documents):
        tokens = numpy.array(ids, numpy.int32)
        stream = Stream(ids=tokens, mask=numpy.ones(len(ids), numpy.uint8))
        writer.add(EncodedDocument(student=stream, teacher=None, position=None, label=classes[number] if classes else None))
    digest = hashlib.sha256(f"test {vocabulary}".encode()).hexdigest()
    entries = {"tokenizer": {"digest": digest, "vocabulary": vocabulary, "end_of_sequence": END, "padding": 0}}
    writer.finish(entries | ({"classes": max(classes) + 1} if classes else {}))
    return folder


def padded_batches(documents: list[list[int]], batch_size: int, length: int) -> list[dict[str, torch.Tensor]]:
    """One document a row, in their order; the rest of a row is padding."""
    batches = []
    for begin in range(0, len(documents) - batch_size + 1, batch_size):
        ids = torch.zeros(batch_size, length, dtype=torch.long)
        mask = torch.zeros(batch_size, length, dtype=torch.long)
        for row, document in enumerate(documents[begin : begin + batch_size]):
            ids[row, : len(document)] = torch.tensor(document)
            mask[row, : len(document)] = 1
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, 0] = IGNORED
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches
