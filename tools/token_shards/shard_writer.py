"""Writes token shards and their manifest. A file appears under its name whole or not at all, the manifest last; a
folder without a manifest is an unfinished one. Checksums are CRC-32C, as in checkpoints: they guard against damage, not against
an adversary, and both languages have them at hand."""

from __future__ import annotations

import collections
import json
import os
import pathlib

import google_crc32c
import numpy as np
import safetensors.numpy

from token_shards import TOKENIZER_FILES, UsageFault
from token_shards.encoding import EncodedDocument

FORMAT_VERSION = 2  # trainer/data/manifest_file.h: kDataFormatVersion


def write_atomically(path: pathlib.Path, data: bytes):
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put_tokenizer(out: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """The folder where trainer/agreement/saved_tokenizer.h finds it; what an earlier run left there goes."""
    folder = out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if name in files:
            write_atomically(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    return folder


def clear_folder(folder: pathlib.Path, overwrite: bool):
    """Makes the folder ready; what an earlier run left there is refused, or removed with its manifest first."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    left = [*([manifest] if manifest.exists() else []), *sorted(folder.glob("shard-*.safetensors"))]
    if left and not overwrite:
        raise UsageFault(f"{left[0]}: is there already: name another --out, or replace it with --overwrite")
    for path in [*left, *folder.glob(".*.tmp")]:
        path.unlink()


def _counted(lengths: collections.Counter[int]) -> str:
    """How many documents have each length, so that `check` knows what a row's length cuts off: 3x2,7,12x40."""
    return ",".join(str(length) if number == 1 else f"{length}x{number}" for length, number in sorted(lengths.items()))


class ShardWriter:
    def __init__(self, folder: pathlib.Path, shard_tokens: int, labelled: bool):
        self.folder = folder
        self._labelled = labelled
        self.documents = self.tokens = self.targets = 0
        self._shard_tokens = shard_tokens
        self._waiting: list[EncodedDocument] = []
        self._waiting_tokens = 0
        self._shards: list[dict] = []
        self._lengths: collections.Counter[int] = collections.Counter()
        self._teacher_lengths: collections.Counter[int] = collections.Counter()

    def add(self, document: EncodedDocument):
        length = len(document.student.ids)
        if self._waiting and self._waiting_tokens + length > self._shard_tokens:
            self._flush()
        self._waiting.append(document)
        self._waiting_tokens += length
        self.documents += 1
        self.tokens += length
        self.targets += int(document.student.mask.sum())
        self._lengths[length] += 1
        if document.teacher is not None:
            self._teacher_lengths[len(document.teacher.ids)] += 1

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {}
        streams = {"": [d.student for d in self._waiting]}
        if self._waiting[0].teacher is not None:
            streams["teacher."] = [d.teacher for d in self._waiting]
            tensors["teacher.position"] = np.concatenate([d.position for d in self._waiting])
        for prefix, parts in streams.items():
            tensors[prefix + "input_ids"] = np.concatenate([part.ids for part in parts])
            tensors[prefix + "target_mask"] = np.concatenate([part.mask for part in parts])
            tensors[prefix + "document_offsets"] = np.cumsum([0] + [len(part.ids) for part in parts], dtype=np.int64)
        if self._labelled:
            tensors["classes"] = np.array([-100 if d.label is None else d.label for d in self._waiting], np.int64)
        return tensors

    def _flush(self):
        tensors = self._tensors()
        data = safetensors.numpy.save(tensors)
        name = f"shard-{len(self._shards):05d}.safetensors"
        write_atomically(self.folder / name, data)
        shard = {"file": name, "bytes": len(data), "crc32c": f"{google_crc32c.value(data):08x}", "documents": len(self._waiting),
                 "tokens": len(tensors["input_ids"]), "targets": int(tensors["target_mask"].sum()),
                 "minimum_id": int(tensors["input_ids"].min(initial=0)),
                 "maximum_id": int(tensors["input_ids"].max(initial=0))}
        if "teacher.input_ids" in tensors:
            shard["teacher_tokens"] = len(tensors["teacher.input_ids"])
            shard["teacher_maximum_id"] = int(tensors["teacher.input_ids"].max(initial=0))
        self._shards.append(shard)
        self._waiting, self._waiting_tokens = [], 0

    def finish(self, entries: dict):
        """`entries`: tokenizer, teacher_tokenizer, classes."""
        if self._waiting:
            self._flush()
        manifest = {"format": "limbeck-tokens", "version": FORMAT_VERSION, **entries, "documents": self.documents,
                    "tokens": self.tokens, "targets": self.targets, "lengths": _counted(self._lengths)}
        if self._teacher_lengths:
            manifest["teacher_lengths"] = _counted(self._teacher_lengths)
        manifest["shards"] = self._shards
        # Its own checksum comes last, over every byte before it.
        text = json.dumps(manifest, indent=2, ensure_ascii=True)[: -len("\n}")] + ",\n"
        text += f'  "crc32c": "{google_crc32c.value(text.encode()):08x}"\n}}\n'
        write_atomically(self.folder / "manifest.json", text.encode())
