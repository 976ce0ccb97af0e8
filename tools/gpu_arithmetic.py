#!/usr/bin/env python3
"""gpu_arithmetic.py: what a distillation step must cost on a GPU, by arithmetic alone. Nothing here is measured.

For each operator its FLOPs and bytes, its floor (the larger of FLOPs / peak and bytes / bandwidth), an estimate (the floor
over an efficiency that is stated) and the target. The student trains with half weights and gradients, float32 masters and
moments; the teacher runs forward alone. The head is planned as products and passes over logits in memory.

  tools/gpu_arithmetic.py                                  Qwen3 1.7B to 0.6B, 4x2048 tokens, V = 151,936, one H100
  tools/gpu_arithmetic.py --attention 3                    the same with FlashAttention 3
  tools/gpu_arithmetic.py --card B200 --batch 16           another card of tools/gpu_check_cards.py, more rows
  tools/gpu_arithmetic.py --student 2048,6144,28,16,8,128  WIDTH,INNER,LAYERS,HEADS,KV_HEADS,HEAD_SIZE
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_check_cards import CARDS, Card  # noqa: E402

HALF, WIDE = 2, 4  # bytes of a number


@dataclass(frozen=True)
class Shape:
    """A decoder as Qwen3's: grouped queries, norms of queries and keys, a gated MLP, the head tied to the embedding."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int

    def linear_weights(self) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return self.layers * (2 * self.width * queries + 2 * self.width * keys + 3 * self.width * self.inner)

    def parameters(self, vocabulary: int) -> int:
        norms = self.layers * (2 * self.width + 2 * self.head_size) + self.width
        return self.linear_weights() + vocabulary * self.width + norms

    def rotated(self) -> int:
        """Numbers a token of the queries and keys of all layers."""
        return self.layers * (self.heads + self.kv_heads) * self.head_size


QWEN3_06B = Shape(1024, 3072, 28, 16, 8, 128)
QWEN3_17B = Shape(2048, 6144, 28, 16, 8, 128)


@dataclass(frozen=True)
class Step:
    student: Shape = QWEN3_06B
    teacher: Shape = QWEN3_17B
    batch: int = 4
    length: int = 2048
    vocabulary: int = 151936
    attention: int = 2  # FlashAttention's version

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclass(frozen=True)
class Cost:
    operator: str
    flops: float
    moved: float  # bytes
    efficiency: float  # of the floor, in the estimate
    target_ms: float | None  # of the default step on one H100
    target_share: float | None  # of the bandwidth, for any step
    why: str

    def floor_ms(self, card: Card) -> float:
        return 1e3 * card.floor_seconds(self.flops, self.moved)

    def estimate_ms(self, card: Card) -> float:
        return self.floor_ms(card) / self.efficiency

    def target(self, card: Card, is_default: bool) -> float | None:
        if self.target_share is not None:
            return 1e3 * self.moved / card.bandwidth / self.target_share
        return self.target_ms if is_default else None


def attention_flops(shape: Shape, step: Step) -> float:
    """Scores and values of the lower triangle alone."""
    return 4 * step.batch * shape.heads * step.length**2 * shape.head_size / 2 * shape.layers


def model_flops(step: Step) -> float:
    """Of the products that the models are made of: what utilisation is counted in. Nothing runs twice."""
    student = 2 * step.tokens * (step.student.linear_weights() + step.vocabulary * step.student.width)
    teacher = 2 * step.tokens * (step.teacher.linear_weights() + step.vocabulary * step.teacher.width)
    return 3 * (student + attention_flops(step.student, step)) + teacher + attention_flops(step.teacher, step)


# Read in the source of PyTorch (aten/src/ATen/native/cudnn/MHA.cpp, transformers/cuda/sdp_utils.cpp) on 2026-11-29, for the
# second reason also found in the library of 2.11: ATen builds cuDNN's backward without set_deterministic_algorithm, which is off
# where nobody asks, and chooses no cuDNN attention where a process asks for deterministic algorithms. Of sequences by
# cumulative lengths it builds the plan anew at each call, and masks know no window.
FLASH_ATTENTION_2 = (
    "FlashAttention 2, which does not use Hopper's own instructions; cuDNN's, which does, is left out: by ATen its backward "
    "adds up in any order, and it knows neither windows nor softcaps"
)


@dataclass(frozen=True)
class Attention:
    """Shares of an H100's 989 TFLOP/s that were published, none of them ours: causal, heads 128 wide, bfloat16 or float16."""

    forward: float
    backward: float  # that adds up in a fixed order, as ours always does
    why: str

    def efficiency(self, forward_flops: float, backward_flops: float) -> float:
        return (forward_flops + backward_flops) / (forward_flops / self.forward + backward_flops / self.backward)


# Forward of 2: 298 TFLOP/s at 2,048 tokens (figure 5 of the paper of FlashAttention 3, arXiv 2407.08608). Forward of 3: 368 us,
# and backward in any order: 1,631 us, for 4 x 48 heads x 2,048 tokens (meta-pytorch/tritonbench pull request 1267, 2026-09):
# 560 and 316 TFLOP/s. What a fixed order costs is known of 8,192 tokens (Dao-AILab/flash-attention pull request 1893, 2025-09):
# there the backward of 3 falls from 575 to 474, and that of 2 is 166 TFLOP/s. Assumed here: both shares hold at 2,048 tokens.
ATTENTION = {
    2: Attention(298 / 989, 166 / 989, FLASH_ATTENTION_2),
    3: Attention(560 / 989, 316 / 989 * 474.0 / 574.7, "FlashAttention 3, of a library that flash_attention_3 names"),
}


def costs(step: Step) -> list[Cost]:
    s, t, n, v = step.student, step.teacher, step.tokens, step.vocabulary
    weights = HALF * (3 * s.linear_weights() + t.linear_weights())  # read twice, written once as gradients
    linear = 2 * n * (3 * s.linear_weights() + t.linear_weights())
    head = 2 * n * v * (3 * s.width + t.width)
    # A pair of logits: both written wide; both read for the row's sums; both read and dz written half; dz read by two products.
    logits = n * v * (2 * WIDE + 2 * WIDE + 2 * WIDE + HALF + 2 * HALF)
    attended_by = ATTENTION[step.attention]
    attention_forward = attention_flops(s, step) + attention_flops(t, step)
    attention_backward = 2.5 * attention_flops(s, step)  # five products where a forward is two
    # A forward reads q, k, v and writes out; a backward reads those four and the gradient, and writes three.
    q, k = s.heads * s.head_size, s.kv_heads * s.head_size
    tq, tk = t.heads * t.head_size, t.kv_heads * t.head_size
    attended = HALF * n * (s.layers * (2 * q + 2 * k + 4 * q + 4 * k) + t.layers * (2 * tq + 2 * tk))
    rotated = HALF * n * (4 * s.rotated() + 2 * t.rotated())  # read and written, and the student's again on the way back
    head_norms = HALF * n * (5 * s.rotated() + 2 * t.rotated())  # on the way back x and dy are read, dx is written
    norms = HALF * n * (5 * (2 * s.layers + 1) * s.width + 2 * (2 * t.layers + 1) * t.width)
    sums = HALF * n * 3 * (2 * 2 * s.layers * s.width + 2 * t.layers * t.width)
    gated = HALF * n * (8 * s.layers * s.inner + 3 * t.layers * t.inner)
    embedded = HALF * n * (2 * s.width + 2 * t.width + 3 * s.width)
    parameters = s.parameters(v)
    return [
        Cost("linear layers", linear, weights, 0.70, None, None, "cuBLAS on shapes of this size; activations stay out of the count"),
        Cost("head: products", head, HALF * v * (4 * s.width + t.width), 0.70, 35, None, "target of both rows of the head"),
        Cost("head: passes over logits", 0, logits, 0.80, None, None, "row sums, then the gradient; an epilogue would save most"),
        Cost("attention", attention_forward + attention_backward, attended,
             attended_by.efficiency(attention_forward, attention_backward), 20, None, attended_by.why),
        Cost("norms of queries and keys", 0, head_norms, 0.80, None, 0.80, "a warp a row"),
        Cost("norms of layers", 0, norms, 0.85, None, 0.80, ""),
        Cost("residual sums", 0, sums, 0.85, None, None, "ATen's"),
        Cost("rotary", 0, rotated, 0.85, None, 0.85, "16-byte packs"),
        Cost("gated activation", 0, gated, 0.85, None, 0.85, "16-byte packs"),
        Cost("embedding", 0, embedded, 0.50, None, None, "gathered rows"),
        Cost("norm of the gradient", 0, HALF * parameters, 0.80, None, None, "for clipping"),
        # Gradient and weight half, master and two moments read and written wide.
        Cost("AdamW", 0, parameters * (2 * HALF + 6 * WIDE), 0.85, 6, None, "one launch for many tensors"),
    ]  # fmt: skip


TARGET_STEP_MS = 150  # with the targets above: 55,000 tokens/s


def table(step: Step, card: Card) -> str:
    is_default = replace(step, attention=Step().attention) == Step() and card.name == "H100"
    heads = ["operator", "TFLOP", "GB", "floor ms", "efficiency", "estimate ms", "target ms", "bound by"]
    rows, total_floor, total_estimate = [], 0.0, 0.0
    listed = costs(step)
    for cost in listed:
        floor, target = cost.floor_ms(card), cost.target(card, is_default)
        bound = "FLOPs" if cost.flops / card.half_flops > cost.moved / card.bandwidth else "bytes"
        rows.append([cost.operator, f"{cost.flops / 1e12:.2f}", f"{cost.moved / 1e9:.2f}", f"{floor:.1f}", f"{cost.efficiency:.2f}",
                     f"{cost.estimate_ms(card):.1f}", "–" if target is None else f"{target:.1f}",
                     bound + (f"; {cost.why}" if cost.why else "")])  # fmt: skip
        total_floor, total_estimate = total_floor + floor, total_estimate + cost.estimate_ms(card)
    rows.append(["step", f"{sum(c.flops for c in listed) / 1e12:.2f}", f"{sum(c.moved for c in listed) / 1e9:.2f}",
                 f"{total_floor:.1f}", f"{total_floor / total_estimate:.2f}", f"{total_estimate:.1f}",
                 f"{TARGET_STEP_MS}" if is_default else "–", ""])  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] + ["--:"] * 6 + ["---"], *rows)]
    used = model_flops(step) / (total_estimate / 1e3) / card.half_flops
    head = (f"By arithmetic, nothing measured: one {card.name}, {step.batch}x{step.length} tokens, V = {step.vocabulary:,}, "
            f"student {step.student.parameters(step.vocabulary) / 1e6:,.0f} M, teacher {step.teacher.parameters(step.vocabulary) / 1e6:,.0f} M")  # fmt: skip
    foot = (f"estimate: {step.tokens / total_estimate * 1e3:,.0f} tokens/s, {100 * used:.0f} % of the peak in products; "
            f"floor: {step.tokens / total_floor * 1e3:,.0f} tokens/s")  # fmt: skip
    return "\n".join([head, "", *lines, "", foot])


def shape(text: str) -> Shape:
    try:
        found = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted six whole numbers WIDTH,INNER,LAYERS,HEADS,KV_HEADS,HEAD_SIZE, "
                                         "for instance 1024,3072,28,16,8,128") from None  # fmt: skip
    if min(vars(found).values()) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers above 0")
    return found


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a whole number above 0")
    return int(text)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_arithmetic.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cards = {card.name: card for card in CARDS}
    parser.add_argument("--card", default="H100", choices=cards)
    parser.add_argument("--student", type=shape, default=QWEN3_06B, metavar="SHAPE")
    parser.add_argument("--teacher", type=shape, default=QWEN3_17B, metavar="SHAPE")
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=2048)
    parser.add_argument("--vocabulary", type=positive, default=151936)
    parser.add_argument("--attention", type=int, choices=ATTENTION, default=2, help="FlashAttention's version; 3 where flash_attention_3 names it")
    o = parser.parse_args(arguments)
    print(table(Step(o.student, o.teacher, o.batch, o.length, o.vocabulary, o.attention), cards[o.card]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
