"""Limbeck's dropout masks written out, and in place of PEFT's: of seed, module, token and place alone."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from limbeck_runner import Limbeck

GOLDEN = 0x9E3779B97F4A7C15


def mixed(x: int) -> int:
    x %= 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def kept(tokens: int, width: int, key: int, rate: float) -> torch.Tensor:
    """Which places of tokens 0, 1, … stay: 64 bits decide on two neighbours."""
    bits = lambda token, j: mixed(mixed(key + token * GOLDEN) + j // 2 * GOLDEN) >> (32 * (j % 2)) & 0xFFFFFFFF  # noqa: E731
    return torch.tensor([[bits(token, j) >= rate * 2**32 for j in range(width)] for token in range(tokens)])


def key_of(seed: int, name: str) -> int:
    """Signed, as the operator takes it."""
    key = mixed(seed + GOLDEN)
    for byte in name.encode():
        key = mixed((key ^ byte) + GOLDEN)
    return key - 2**64 if key >= 2**63 else key


class Masks(torch.nn.Module):
    """Stands where PEFT has its dropout; `place` says the number of the batch's first row."""

    def __init__(self, key: int, rate: float, place: dict):
        super().__init__()
        self.key, self.rate, self.place = key, rate, place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(self.place["first"], self.place["first"] + x.shape[0])
        tokens = rows[:, None] * 2**24 + torch.arange(x.shape[1])
        return torch.ops.limbeck.dropout(x, tokens.flatten(), self.key, self.rate)


def put_on(model: peft.PeftModel, seed: int = 0) -> dict:
    """On every module where PEFT drops something; gives the place that all of them read."""
    torch.ops.load_library(str(Path(Limbeck()._program).parent.parent / "lib" / "liblimbeck_kernels.so"))
    place = {"first": 0, "modules": 0}
    for name, module in model.named_modules():
        dropout = getattr(module, "lora_dropout", {})
        if "default" in dropout and isinstance(dropout["default"], torch.nn.Dropout):
            path = "student." + name.removeprefix("base_model.model.").removeprefix("model.") + ".default"
            dropout["default"] = Masks(key_of(seed, path), dropout["default"].p, place)
            place["modules"] += 1
    assert place["modules"] > 0
    return place
