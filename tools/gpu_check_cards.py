"""What a GPU can do at most, by its name: dense FLOP/s and bytes/s of the makers' data sheets (no sparsity)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    name: str
    half_flops: float  # bfloat16 and float16 on tensor cores, sums in float32
    float_flops: float  # float32 outside of tensor cores: nothing of ours uses TF32
    bandwidth: float  # bytes/s of the device's memory

    def floor_seconds(self, flops: float, moved: float, dtype: str = "bfloat16") -> float:
        """No implementation that does these operations and moves these bytes takes less."""
        return max(flops / (self.float_flops if dtype == "float32" else self.half_flops), moved / self.bandwidth)


def _card(name: str, half_teraflops: float, float_teraflops: float, terabytes: float) -> Card:
    return Card(name, half_teraflops * 1e12, float_teraflops * 1e12, terabytes * 1e12)


# The first whose name stands in what the driver says, so the longer names come first.
CARDS = (
    _card("H100 PCIe", 756, 51, 2.0),
    _card("H100 NVL", 835, 60, 3.9),
    _card("H100", 989, 67, 3.35),
    _card("H200", 989, 67, 4.8),
    _card("A100-SXM4-40GB", 312, 19.5, 1.555),
    _card("A100-PCIE-40GB", 312, 19.5, 1.555),
    _card("A100 80GB PCIe", 312, 19.5, 1.935),
    _card("A100", 312, 19.5, 2.039),
    _card("B200", 2250, 75, 8.0),
    _card("L40S", 362, 91.6, 0.864),
)


def card_named(name: str) -> Card | None:
    """None for a card that is not in the table: then no share of a roofline is given, rather than one of another card."""
    plain = name.lower()
    return next((card for card in CARDS if card.name.lower() in plain and "gb200" not in plain), None)
