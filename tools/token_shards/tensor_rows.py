"""Rows that somebody has tokenized and saved with torch.save: input_ids.pt, attention_mask.pt and labels.pt of a folder.

They are pickles. They are read here, by what runs nothing of them, and become shards; no process that trains opens one."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

import convert_pickle
import guarded_work
import numpy as np

from token_shards import DataFault, UsageFault
from token_shards.encoding import EncodedDocument, Stream
from token_shards.record_forms import shown
from token_shards.tokenizer_file import TokenizerFile

NAMES = ("input_ids", "attention_mask", "labels")
UNLABELLED = -100
MOST_CLASSES = 1 << 30
BYTES_A_TOKEN = 64  # of memory, for the rows beside what was read
ADVICE = "save it again with torch.save(tensor, FILE), one tensor of whole numbers, from a source that you trust"


@dataclasses.dataclass
class Row(EncodedDocument):
    def digest(self) -> int:
        """64 bits that depend on the content alone."""
        return int.from_bytes(hashlib.sha256(self.student.ids.tobytes()).digest()[:8], "big")


def whole_numbers(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """The one tensor of the file."""
    import torch
    if not path.is_file():
        raise UsageFault(f"{path}: no such file, wanted {', '.join(f'{name}.pt' for name in NAMES)} in the folder of --from-pt")
    value = convert_pickle.loaded_from(path, ADVICE, DataFault)
    if not isinstance(value, torch.Tensor):
        raise DataFault(f"{path}: holds {type(value).__name__}, wanted one tensor: {ADVICE}")
    if not convert_pickle.is_dense(value) or value.is_floating_point() or value.is_complex():
        raise DataFault(f"{path}: holds {str(value.dtype).removeprefix('torch.')}{'' if value.layout == torch.strided else ', sparse'}, "
                        f"wanted a dense tensor of whole numbers: {ADVICE}")  # fmt: skip
    if value.dim() != dimensions or value.numel() == 0:
        wanted = "[rows, tokens]" if dimensions == 2 else "[rows], one class a row"
        raise DataFault(f"{path}: has shape {list(value.shape)}, wanted {wanted}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DataFault(f"{path}: its shape {list(value.shape)} repeats the few values that are stored for it: {ADVICE}")
    try:
        return value.detach().numpy().astype(np.int64)
    except (TypeError, RuntimeError):  # dtypes that numpy lacks
        raise DataFault(f"{path}: holds {value.dtype}, wanted int64 or another whole number: {ADVICE}") from None


@dataclasses.dataclass
class Rows:
    ids: np.ndarray  # [rows, tokens]
    begins: np.ndarray  # [rows], where the mask's ones begin
    lengths: np.ndarray  # and how many they are
    labels: np.ndarray
    classes: int

    def documents(self, most: int | None, most_tokens: int | None) -> Iterator[Row]:
        tokens = 0
        for i in range(len(self.lengths) if most is None else min(most, len(self.lengths))):
            begin, length = int(self.begins[i]), int(self.lengths[i])
            tokens += length
            if most_tokens and tokens > most_tokens:
                return
            ids = self.ids[i, begin : begin + length].astype(np.int32)
            label = int(self.labels[i])
            yield Row(Stream(ids, np.ones(length, np.uint8)), label=None if label == UNLABELLED else label)


def _check_mask(path: pathlib.Path, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's tokens begin, and how many they are: one stretch of ones, padding on either side."""
    odd = np.argwhere((mask != 0) & (mask != 1))
    if len(odd):
        row, at = odd[0]
        raise DataFault(f"{path}: row {row}, token {at} is {mask[row, at]}, wanted 0 or 1")
    lengths, begins = mask.sum(1), mask.argmax(1)
    ends = mask.shape[1] - mask[:, ::-1].argmax(1)
    torn = np.flatnonzero((lengths == 0) | (ends - begins != lengths))
    if len(torn):
        row = torn[0]
        what = "no 1" if lengths[row] == 0 else f"{lengths[row]} ones from token {begins[row]} to {ends[row] - 1}, with zeros between"
        raise DataFault(f"{path}: row {row} has {what}, wanted one stretch of ones with padding before or behind it")
    return begins, lengths


def _check_ids(path: pathlib.Path, ids: np.ndarray, mask: np.ndarray, tokenizer: TokenizerFile) -> None:
    outside = np.argwhere((mask == 1) & ((ids < 0) | (ids >= tokenizer.vocabulary)))
    if len(outside):
        row, at = outside[0]
        raise DataFault(f"{path}: row {row}, token {at} is {ids[row, at]}, wanted ids below the {tokenizer.vocabulary} of "
                        f"{tokenizer.path}: name the --tokenizer that made them")


def _check_labels(path: pathlib.Path, labels: np.ndarray, names: list[str] | None) -> int:
    """How many classes there are."""
    most = len(names) if names else MOST_CLASSES
    outside = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= most)))
    if len(outside):
        wanted = f"0 to {most - 1} (--label-names)" if names else "a number from 0 on"
        raise DataFault(f"{path}: row {outside[0]} is class {shown(int(labels[outside[0]]))}, wanted {wanted}, or {UNLABELLED} for none")
    if (labels == UNLABELLED).all():
        raise DataFault(f"{path}: none of {len(labels)} rows has a class, wanted a number from 0 on in some")
    return most if names else int(labels.max()) + 1


def read(folder: pathlib.Path, tokenizer: TokenizerFile, names: list[str] | None) -> Rows:
    import torch  # noqa: F401: its own memory is not counted with the work
    guarded_work.libraries_are_loaded()
    if not folder.is_dir():
        raise UsageFault(f"--from-pt {folder}: no such folder")
    paths = {name: folder / f"{name}.pt" for name in NAMES}
    ids, mask, labels = (whole_numbers(paths[name], 1 if name == "labels" else 2) for name in NAMES)
    guarded_work.step("checking its rows", folder, 60 + ids.size * 1e-6, guarded_work.GIB + ids.size * BYTES_A_TOKEN, "cut it into smaller ones")
    if mask.shape != ids.shape:
        raise DataFault(f"{paths['attention_mask']}: has shape {list(mask.shape)}, wanted {list(ids.shape)} as {paths['input_ids']}")
    if len(labels) != len(ids):
        raise DataFault(f"{paths['labels']}: {len(labels)} classes, wanted one for each of {len(ids)} rows of {paths['input_ids']}")
    begins, lengths = _check_mask(paths["attention_mask"], mask)
    _check_ids(paths["input_ids"], ids, mask, tokenizer)
    return Rows(ids, begins, lengths, labels, _check_labels(paths["labels"], labels, names))
