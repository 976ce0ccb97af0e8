"""Small changes of JSON, bytes and safetensors files: what an attacker, a bug or a bad disk leaves behind."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path

import numpy

EDGES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 63, 64, 65, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64,
    -(2**63), 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 3.4e38, "", "a", "4", "none", "float16", "\0", "../../x", "é\u202e",
    "(.|.)*Z", "(a+)+$", "x" * 3000, "*" * 3000, [], [1], [0, -1, 2**40], [[]], {}, {"a": 1}, {"(.|.)*Z": 4},
    {"rope_type": "yarn", "factor": 0}, {"type": "dynamic", "factor": -1.0}, ["full_attention"] * 99,
]  # fmt: skip

# What may stand behind an option's name.
WORDS = [
    "", "0", "-0", "1", "-1", "2", "1e-320", "1e400", "nan", "-inf", "0x10", "1e3", "9223372036854775807",
    "9223372036854775808", "99999999999999999999", "true", "no", "maybe", "none", "auto", "float16", "bfloat16", "int8",
    "nf4", "cuda", "cuda:99", "meta", "tpu", "0 steps", "1 steps", "-3 epochs", "1 tokens", "2 samples", "1:1 1:1", "0:0",
    "0:99 1:1", "1:1,0:0", "(.+)+Z", "(.|.)*Z", "*" * 3000, "[", "(", "\\", "a" * 20000, "q_proj", "all-linear",
    "lm_head=3", "*=float16", "student.*: storage=float16", "é", "\x01", "/dev/null", "/", ".", "..", "/nonexistent/x",
    "forward_kl", "reverse_kl", "js", "topk", "lora", "dora", "ia3", "npt", "tree", "3",
]  # fmt: skip


def places_of(value, path=()):
    """Every place of a JSON value, the whole one first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_of(inner, (*path, key))


def edge(dice: random.Random):
    """A copy: what is put into a case is changed there, and must not change the cases after it."""
    return copy.deepcopy(dice.choice(EDGES))


def mutate_json(value, dice: random.Random):
    place = dice.choice(list(places_of(value))[1:] or [()])
    if not place:
        return edge(dice)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    kind, old = dice.randrange(8), holder[place[-1]]
    if kind == 0:
        del holder[place[-1]]
    elif kind == 1 and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[place[-1]] = dice.choice([old + 1, old - 1, old * 2, -old, old / 2, old // 2 if old else 1, old * 1000])
    elif kind == 2 and isinstance(old, list):
        old += [edge(dice)] if dice.random() < 0.5 or not old else copy.deepcopy(old)
    elif kind == 3 and isinstance(holder, dict):
        other = dice.choice(list(holder))
        holder[place[-1]] = copy.deepcopy(holder[other])
    else:
        holder[place[-1]] = edge(dice)
    return value


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        kind, at = dice.randrange(5), dice.randrange(len(out) + 1) if out else 0
        if kind == 0:
            del out[at:]
        elif kind == 1:
            del out[at : at + dice.randrange(1, 9)]
        elif kind == 2:
            out[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        elif kind == 3:
            out[at:at] = out[at : at + dice.randrange(1, 65)]
        elif out:
            out[at % len(out)] = dice.choice([0, 0xFF, 0x7F, 0x80, out[at % len(out)] ^ 1 << dice.randrange(8)])
    return bytes(out)


def mutate_json_file(path: Path, dice: random.Random) -> None:
    if dice.random() < 0.15:
        path.write_bytes(mutate_bytes(path.read_bytes(), dice))
        return
    value = json.loads(path.read_bytes())
    for _ in range(dice.choice([1, 1, 2, 3])):
        value = mutate_json(value, dice)
    text = json.dumps(value)
    if dice.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]  # every key twice
    path.write_text(text)


def mutate_safetensors(path: Path, dice: random.Random) -> None:
    """Bytes, the header, or the values: what no header check can see."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = dice.randrange(4)
    if kind == 0:
        path.write_bytes(mutate_bytes(data, dice))
        return
    if kind == 1:
        header = mutate_json(header, dice)
    elif kind == 2:
        names = [name for name in header if name != "__metadata__"]
        one = header[dice.choice(names)]
        shape = one["shape"]
        change = dice.randrange(4)
        if change == 0 and len(shape) > 1:
            shape.reverse()
        elif change == 1:
            shape.insert(0, 1)
        elif change == 2:
            one["dtype"] = dice.choice(["F16", "BF16", "I32", "F64", "I8", "F8_E4M3", "BOOL", "C64"])
        else:
            header[dice.choice(names) + "x"] = header.pop(dice.choice(names))
    else:
        values = numpy.frombuffer(payload[: len(payload) // 4 * 4], numpy.float32).copy()
        many = dice.choice([1, 1, 100, len(values)])
        at = numpy.random.default_rng(dice.randrange(2**32)).integers(0, len(values), many)
        values[at] = dice.choice([numpy.nan, numpy.inf, -numpy.inf, 3e38, -3e38, 1e30, 1e-44, 0.0])
        payload = values.tobytes() + payload[len(payload) // 4 * 4 :]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
