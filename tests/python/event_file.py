"""Reads TensorBoard event files without TensorBoard and without a line of the writer's: framing, checksums, protobuf."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import google_crc32c


class BrokenEventFile(ValueError):
    pass


@dataclass
class Event:
    wall_time: float = 0.0
    step: int = 0
    file_version: str = ""
    session_status: int | None = None  # 1: a session starts, what came before of its step and later is void
    scalars: dict[str, float] = field(default_factory=dict)


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    data, at = path.read_bytes(), 0
    while at < len(data):
        head = data[at : at + 12]
        if len(head) < 12:
            raise BrokenEventFile(f"{path}: {len(head)} bytes at {at}, wanted a record's 12")
        length, head_crc = struct.unpack("<QI", head)
        if masked(google_crc32c.value(head[:8])) != head_crc:
            raise BrokenEventFile(f"{path}: checksum of the length at {at}")
        body = data[at + 12 : at + 12 + length]
        tail = data[at + 12 + length : at + 16 + length]
        if len(body) < length or len(tail) < 4:
            raise BrokenEventFile(f"{path}: a record of {length} bytes at {at} is cut")
        if masked(google_crc32c.value(body)) != struct.unpack("<I", tail)[0]:
            raise BrokenEventFile(f"{path}: checksum of the record at {at}")
        yield body
        at += 16 + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 1:
            value, at = message[at : at + 8], at + 8
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire == 5:
            value, at = message[at : at + 4], at + 4
        else:
            raise BrokenEventFile(f"wire type {wire}")
        yield number, value


def _scalar(message: bytes) -> tuple[str, float]:
    parts = dict(fields(message))
    return parts[1].decode(), struct.unpack("<f", parts[2])[0]


def parse(record: bytes) -> Event:
    event = Event()
    for number, value in fields(record):
        if number == 1:
            event.wall_time = struct.unpack("<d", value)[0]
        elif number == 2:
            event.step = value
        elif number == 3:
            event.file_version = value.decode()
        elif number == 5:
            event.scalars |= dict(_scalar(item) for which, item in fields(value) if which == 1)
        elif number == 7:
            event.session_status = dict(fields(value)).get(1)
        else:
            raise BrokenEventFile(f"field {number} in an event")
    return event


def read_run(folder: Path) -> dict[str, dict[int, float]]:
    """Every series of a run by tag and step, as TensorBoard shows it: later sessions replace what they begin with."""
    series: dict[str, dict[int, float]] = {}
    paths = sorted(folder.glob("*tfevents*"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in paths:
        for record in records(path):
            event = parse(record)
            if event.session_status == 1:
                series = {tag: {s: v for s, v in steps.items() if s < event.step} for tag, steps in series.items()}
            for tag, value in event.scalars.items():
                series.setdefault(tag, {})[event.step] = value
    return series
