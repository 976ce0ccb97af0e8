"""What bench_peers.py gives to all contenders: token rows in Limbeck's format, and the recipe of the same step."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path


def write_rows(folder: Path, rows: int, length: int, vocabulary: int) -> None:
    """Random documents of `length` tokens that end with token 0: packed, each fills one row exactly."""
    import numpy
    from token_shards.encoding import EncodedDocument, Stream
    from token_shards.shard_writer import ShardWriter

    folder.mkdir(parents=True, exist_ok=True)
    ids = numpy.random.default_rng(0).integers(1, vocabulary, (rows, length), dtype=numpy.int32)
    ids[:, -1] = 0
    writer = ShardWriter(folder, shard_tokens=rows * length, labelled=False)
    for row in ids:
        writer.add(EncodedDocument(student=Stream(ids=row, mask=numpy.ones(length, numpy.uint8))))
    digest = hashlib.sha256(f"random {vocabulary}".encode()).hexdigest()
    writer.finish({"tokenizer": {"digest": digest, "vocabulary": vocabulary, "end_of_sequence": 0}})


def recipe_text(job: dict) -> str:
    """The step of the plain loop: forward KL at temperature T, AdamW, clip 1, constant rate, rows in their order."""
    teacher = f"""\
[teacher]
model = {job["teacher"]}
dtype = {job["teacher_dtype"]}
"""
    adapter = f"""\
[adapter]
kind = lora
rank = {job["adapter_rank"]}
alpha = {2 * job["adapter_rank"]}
dropout = {job["adapter_dropout"]}
"""
    return (teacher if job["kd_weight"] > 0 else "") + (adapter if job["adapter_rank"] else "") + f"""\
[student]
model = {job["student"]}
dtype = {job["student_dtype"]}

[data]
train = {job["data"]}
batch_size = {job["batch"]}
sequence_length = {job["length"]}
packing = packed
shuffle = false

[objective]
divergence = forward_kl
temperature = {job["temperature"]}
alpha = {job["kd_weight"]}

[optim]
learning_rate = {job["learning_rate"]}
schedule = constant
warmup = 0 steps
weight_decay = {job["weight_decay"]}
clip = 1.0

[train]
steps = {job["steps"]} steps
accumulate = 1
log_every = 1
"""


def step_times(run: Path) -> list[float]:
    """When each training step was written, by the wall clock: from the run's TensorBoard file."""
    found = []
    for path in sorted(run.glob("*tfevents*")):
        data, at = path.read_bytes(), 0
        while at + 16 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + 12 : at + 12 + length]
            if b"train/" in body and body[:1] == b"\x09":  # field 1, eight bytes: the wall time
                found.append(struct.unpack_from("<d", body, 1)[0])
            at += 16 + length
    if not found:
        raise ValueError(f"{run}: no training step in its TensorBoard file")
    return found
