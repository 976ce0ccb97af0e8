#!/usr/bin/env python3
"""gpu_arithmetic.py: what one step of a distillation costs on a GPU, by arithmetic.

  tools/gpu_arithmetic.py                        0.6B student, 1.7B teacher, 8,192 tokens (4 x 2048), one H100
  tools/gpu_arithmetic.py --card H200 --rows 8   another card, more tokens
  tools/gpu_arithmetic.py --json                 the same numbers for a program

For each operator: what it computes (TFLOP), what it moves through memory (GB), the least time that the card allows
(floor: the longer of the two), and an estimate with the shares of the peaks that well written operators reach. Nothing
here is measured: tools that measure compare with it.
"""

import argparse
import dataclasses
import json
import sys

HALF, SINGLE, INDEX = 2, 4, 8  # bytes of a number


@dataclasses.dataclass(frozen=True)
class Card:
    teraflops: float  # of dense products of half types
    terabytes: float  # a second, of memory


# The vendor's figures.
CARDS = {"A100": Card(312, 2.04), "H100": Card(989, 3.35), "H200": Card(989, 4.8), "B200": Card(2250, 8.0)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder with grouped queries, norms of q and k, a gated MLP and a head that shares its table."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    depth: int
    inner: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        attention = self.hidden * self.depth * (2 * self.heads + 2 * self.key_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        norms = 2 * self.hidden + 2 * self.depth
        return self.layers * (self.layer_weights + norms) + self.hidden + self.vocabulary * self.hidden

    @property
    def layer_products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every product of a layer."""
        q, k = self.heads * self.depth, self.key_heads * self.depth
        return [(self.hidden, q), (self.hidden, k), (self.hidden, k), (q, self.hidden),
                (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]  # fmt: skip


# The published sizes of Qwen3.
MODELS = {
    "0.6B": Model(hidden=1024, layers=28, heads=16, key_heads=8, depth=128, inner=3072, vocabulary=151936),
    "1.7B": Model(hidden=2048, layers=28, heads=16, key_heads=8, depth=128, inner=6144, vocabulary=151936),
    "4B": Model(hidden=2560, layers=36, heads=32, key_heads=8, depth=128, inner=9728, vocabulary=151936),
    "8B": Model(hidden=4096, layers=36, heads=32, key_heads=8, depth=128, inner=12288, vocabulary=151936),
}

# Shares of the peaks that good operators reach. FlashAttention 2 was written for the A100: 35 to 40 % of an H100.
PRODUCT_SHARE, ATTENTION_SHARE, MEMORY_SHARE = 0.70, 0.35, 0.85
HEAD, ATTENTION, STEP = "head and divergence", "attention", "the step"
TARGET_MS = {HEAD: 35.0, ATTENTION: 20.0, STEP: 150.0}  # 0.6B from 1.7B, 8,192 tokens, H100


@dataclasses.dataclass(frozen=True)
class Operator:
    group: str
    name: str
    flops: float
    bytes: float
    share: float = PRODUCT_SHARE  # of the peak of products

    def floor_ms(self, card: Card) -> float:
        return max(self.flops / (card.teraflops * 1e9), self.bytes / (card.terabytes * 1e9))

    def estimate_ms(self, card: Card) -> float:
        return max(self.flops / (self.share * card.teraflops * 1e9), self.bytes / (MEMORY_SHARE * card.terabytes * 1e9))


def products(model: Model, tokens: int, passes: int) -> tuple[float, float]:
    """FLOPs and bytes of a model's linears: one pass is y = x W, and backward is two more."""
    flops = byte = 0.0
    for inputs, outputs in model.layer_products:
        flops += 2.0 * tokens * inputs * outputs * passes
        byte += HALF * (tokens * (inputs + outputs) + inputs * outputs) * passes
    return flops * model.layers, byte * model.layers


def attention(model: Model, rows: int, length: int, backward: bool) -> tuple[float, float]:
    """A causal one computes half of its square; backward has five products in the place of two."""
    products_of = 5 if backward else 2
    flops = products_of * 2.0 * rows * model.heads * model.depth * length * length / 2
    numbers = rows * length * model.depth * (2 * model.heads + 2 * model.key_heads)  # q and out, k and v
    return flops * model.layers, HALF * numbers * (2 if backward else 1) * model.layers


def elementwise(model: Model, tokens: int, backward: bool) -> dict[str, float]:
    """Bytes of what has no product: read and written once each."""
    q_and_k = model.depth * (model.heads + model.key_heads)
    normed = 2 * model.hidden + q_and_k
    numbers = {
        "norms": (3 if backward else 2) * normed,
        "rotary": 2 * q_and_k,
        "gated activation": (5 if backward else 3) * model.inner,
        "residual sums": 2 * 3 * model.hidden,
    }
    return {name: float(HALF * tokens * count * model.layers) for name, count in numbers.items()}


def head(student: Model, teacher: Model, tokens: int) -> list[Operator]:
    """Logits of a run stay in memory as float32: written by their product, read by the statistics, read again by the
    gradient, which is written as a half type and read by two products."""
    logits = float(tokens) * student.vocabulary
    table = float(student.vocabulary) * student.hidden

    def product(name: str, width: int, moved: float) -> Operator:
        return Operator(HEAD, name, 2.0 * logits * width, moved)

    return [
        product("logits of the student", student.hidden, SINGLE * logits + HALF * table),
        product("logits of the teacher", teacher.hidden, SINGLE * logits + HALF * table / student.hidden * teacher.hidden),
        Operator(HEAD, "row statistics", 0.0, 2 * 2 * SINGLE * logits),  # softmax, then divergence, of both
        Operator(HEAD, "gradient by the logits", 0.0, 2 * SINGLE * logits + HALF * logits),
        product("gradient by the states", student.hidden, HALF * (logits + table)),
        product("gradient by the table", student.hidden, HALF * logits + 2 * SINGLE * table),
    ]


def step(student: Model, teacher: Model, rows: int, length: int) -> list[Operator]:
    if student.vocabulary != teacher.vocabulary:
        sizes = f"the student has {student.vocabulary} tokens and the teacher {teacher.vocabulary}"
        raise ValueError(f"{sizes}: wanted one vocabulary")
    tokens = rows * length
    out = []
    for who, model, passes in (("teacher", teacher, 1), ("student", student, 3)):
        out.append(Operator("linears", f"linears of the {who}", *products(model, tokens, passes)))
        for backward in (False, True)[: 1 if who == "teacher" else 2]:
            when = "backward" if backward else "forward"
            cost = attention(model, rows, length, backward)
            out.append(Operator(ATTENTION, f"attention of the {who}, {when}", *cost, ATTENTION_SHARE))
            for name, moved in elementwise(model, tokens, backward).items():
                out.append(Operator("elementwise", f"{name} of the {who}, {when}", 0.0, moved))
    out += head(student, teacher, tokens)
    out.append(Operator("optimizer", "gradient norm", 0.0, float(HALF * student.parameters)))
    # Reads the gradient; writes the weight; reads and writes master, mean and square.
    out.append(Operator("optimizer", "AdamW", 0.0, float((2 * HALF + 6 * SINGLE) * student.parameters)))
    return out


def summed(operators: list[Operator], card: Card) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for operator in operators:
        for name in (operator.group, STEP):
            row = groups.setdefault(name, dict(tflop=0.0, gigabytes=0.0, floor_ms=0.0, estimate_ms=0.0))
            row["tflop"] += operator.flops / 1e12
            row["gigabytes"] += operator.bytes / 1e9
            row["floor_ms"] += operator.floor_ms(card)
            row["estimate_ms"] += operator.estimate_ms(card)
    groups[STEP] = groups.pop(STEP)  # last
    return groups


def table(operators: list[Operator], card: Card) -> str:
    lines = ["| operator | TFLOP | GB | floor ms | estimate ms |", "|---|---:|---:|---:|---:|"]
    for o in operators:
        times = f"{o.floor_ms(card):.2f} | {o.estimate_ms(card):.2f}"
        lines.append(f"| {o.name} | {o.flops / 1e12:.2f} | {o.bytes / 1e9:.2f} | {times} |")
    for name, row in summed(operators, card).items():
        times = f"{row['floor_ms']:.1f} | {row['estimate_ms']:.1f}"
        lines.append(f"| **{name}** | {row['tflop']:.2f} | {row['gigabytes']:.2f} | {times} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=CARDS, default="H100")
    parser.add_argument("--student", choices=MODELS, default="0.6B")
    parser.add_argument("--teacher", choices=MODELS, default="1.7B")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step (4)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row (2048)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.rows < 1 or chosen.length < 1:
        parser.error(f"--rows {chosen.rows} --length {chosen.length}: wanted 1 or more of each")
    card = CARDS[chosen.card]
    operators = step(MODELS[chosen.student], MODELS[chosen.teacher], chosen.rows, chosen.length)
    groups = summed(operators, card)
    tokens = chosen.rows * chosen.length
    if chosen.json:
        rows = [dataclasses.asdict(o) | dict(floor_ms=o.floor_ms(card), estimate_ms=o.estimate_ms(card)) for o in operators]
        print(json.dumps(dict(card=chosen.card, tokens=tokens, operators=rows, groups=groups), indent=1))
        return 0
    print(f"{chosen.student} student, {chosen.teacher} teacher, {chosen.rows} x {chosen.length} tokens, one {chosen.card} "
          f"({card.teraflops:g} TFLOP/s, {card.terabytes:g} TB/s); by arithmetic, not measured\n")  # fmt: skip
    print(table(operators, card))
    print(f"\nshares taken: products {PRODUCT_SHARE:.0%}, attention {ATTENTION_SHARE:.0%}, memory {MEMORY_SHARE:.0%}; "
          f"{1e3 * tokens / groups[STEP]['estimate_ms']:,.0f} tokens/s")  # fmt: skip
    if (chosen.card, chosen.student, chosen.teacher, tokens) == ("H100", "0.6B", "1.7B", 8192):
        for name, wanted in TARGET_MS.items():
            print(f"target of {name}: {wanted:g} ms; estimate {groups[name]['estimate_ms']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
