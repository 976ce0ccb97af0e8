"""Learned rounding: its operators against the formulas in float64, values and gradients; and limbeck quantize
--rounding=learned against the same loop in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from test_compensated_rounding import NF4, Stored
from test_quantized_ops import FORMATS, INT4, dequantized, ops, weight

SHAPES = [(40, 130), (5, 77), (17, 320), (1, 3)]


class Rounded(torch.autograd.Function):
    """To the nearest whole number; the gradient passes straight through."""

    @staticmethod
    def forward(_, x):
        return x.round()

    @staticmethod
    def backward(_, gradient):
        return gradient


def each(values: torch.Tensor, form: str, shape: tuple[int, int]) -> torch.Tensor:
    """Numbers by scale, value by value."""
    rows, columns = shape
    if form == "int8":
        return values[:, None].expand(shape)
    if form in INT4:
        return values.view(rows, -1).repeat_interleave(INT4[form], 1)[:, :columns]
    return values.repeat_interleave(64)[: rows * columns].view(shape)


def formula(w: torch.Tensor, v: torch.Tensor, span: torch.Tensor, form: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """What the codes stand for, differentiable in v and span; of the parts the stored scales are taken, without a slope."""
    shape = tuple(w.shape)
    stored = Stored(parts, form, shape).scale.double()
    as_stored = lambda exact: exact + (stored - exact).detach()  # noqa: E731
    if form.startswith("nf4"):
        levels, exact = NF4.double(), each(span[0], form, shape)
        share = (w / exact).clamp(-1, 1)
        below = torch.bucketize(share.detach(), levels[1:-1], right=True)
        place = below + (share - levels[below]) / (levels[below + 1] - levels[below]) + v
        place = place.clamp(0, 15)
        moved = place.detach().floor().long().clamp(0, 14)
        between = levels[moved] + (place - moved) * (levels[moved + 1] - levels[moved])
        # A half goes down: the lower level where the distance is the same.
        return as_stored(exact) * (between + (levels[(place - 0.5).ceil().long()] - between).detach())
    if form == "int8":
        scale = as_stored(each(span[0], form, shape) / 127)
        return scale * Rounded.apply(w / scale + v).clamp(-127, 127)
    if "sym" in form:
        scale = as_stored(each(span[0], form, shape) / 7.5)
        return scale * ((Rounded.apply(w / scale + v) + 8).clamp(0, 15) - 8)
    least, most = (each(end, form, shape) for end in span)
    scale = as_stored((most - least) / 15)
    zero = Rounded.apply(-least / scale)
    return scale * ((Rounded.apply(w / scale + v) + zero).clamp(0, 15) - zero)


def drawn(shape: tuple[int, int], form: str, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w = weight(shape)
    span = ops.quantized_range(w, form)
    return w, torch.rand(shape, generator=generator) - 0.5, span * (0.5 + 0.5 * torch.rand(span.shape, generator=generator))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_offsets_and_by_its_own_range_it_is_rounding_to_nearest(shape, form):
    w = weight(shape)
    for scales in (torch.float32, torch.bfloat16, torch.float16):
        found = ops.quantize_learned(w, torch.zeros(shape), ops.quantized_range(w, form), form, scales)
        plain = ops.quantize_weight(w, form, scales)
        assert len(found) == len(plain) and all(torch.equal(one, other) for one, other in zip(found, plain, strict=True)), scales


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_formula_in_float64(shape, form):
    for scales in (torch.float32, torch.float16):
        w, v, span = drawn(shape, form)
        v.requires_grad_(), span.requires_grad_()
        values = ops.learned_values(w, v, span, form, scales)
        parts = ops.quantize_learned(w, v, span, form, scales)
        assert torch.equal(values, dequantized(parts, form, shape))
        wide_v, wide_span = v.detach().double().requires_grad_(), span.detach().double().requires_grad_()
        wanted = formula(w.double(), wide_v, wide_span, form, parts)
        # A place that float32 rounds over a boundary is another code: none of these is so near to one.
        torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=1e-9)
        slope = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        values.backward(slope)
        wanted.backward(slope.double())
        torch.testing.assert_close(v.grad.double(), wide_v.grad, rtol=1e-5, atol=1e-8)
        # Sums of up to 320 float32 terms that nearly cancel.
        largest = float(wide_span.grad.abs().max())
        torch.testing.assert_close(span.grad.double(), wide_span.grad, rtol=1e-4, atol=1e-5 * largest)
        assert largest > 0 and (v.grad != 0).double().mean() > (0.5 if w.numel() > 3 else 0)


@pytest.mark.parametrize("form", FORMATS)
def test_an_offset_of_a_half_moves_a_value_to_its_other_neighbour_alone(form, shape=(37, 128)):
    w = weight(shape)
    span = ops.quantized_range(w, form)
    codes = lambda v: Stored(ops.quantize_learned(w, v, span, form), form, shape).codes  # noqa: E731
    nearest = codes(torch.zeros(shape))
    for offset in (0.4999, -0.4999):
        change = codes(torch.full(shape, offset)) - nearest
        if form == "int8":
            change = change.to(torch.int8)
        assert set(change.unique().tolist()) <= {0, int(offset * 2.001)} and 0.2 < (change != 0).double().mean() < 0.8


@pytest.mark.parametrize("form", FORMATS)
def test_a_moved_matrix_is_rounded_to_the_codes_it_was_moved_to(form, shape=(17, 192)):
    w, v, _ = drawn(shape, form)
    span = ops.quantized_range(w, form)
    parts = ops.quantize_learned(w, v * 3, span, form)
    moved = ops.moved_to_codes(w, span, parts, form)
    again = ops.quantize_learned(moved, torch.zeros(shape), span, form)
    assert all(torch.equal(one, other) for one, other in zip(again, parts, strict=True))
    codes, nearest = (Stored(of, form, shape).codes for of in (parts, ops.quantize_learned(w, torch.zeros(shape), span, form)))
    assert torch.equal(moved == w, codes == nearest)
    assert torch.equal(ops.moved_to_codes(w, span, ops.quantize_learned(w, torch.zeros(shape), span, form), form), w)


@pytest.mark.parametrize("form", ["int8", "int4-g32", "nf4-double"])
def test_zeros_threads_and_meta(form, shape=(70, 130)):
    w, v, span = drawn(shape, form)
    w[:2] = 0
    span = ops.quantized_range(w, form)
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        leaves = v.clone().requires_grad_(), span.clone().requires_grad_()
        values = ops.learned_values(w, *leaves, form)
        values.backward(torch.ones(shape))
        found.append([values, leaves[0].grad, leaves[1].grad, *ops.quantize_learned(w, v, span, form)])
        assert all(bool(t.isfinite().all()) for t in found[-1][:3]) and (form == "nf4-double" or not values[:2].any())
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))
    w, v, span = (t.to("meta") for t in (w, v, span))
    values = ops.learned_values(w, v.requires_grad_(), span.requires_grad_(), form)
    values.backward(torch.ones(shape, device="meta"))
    parts = ops.quantize_learned(w, v, span, form)
    for ours, real in zip([values, v.grad, span.grad, *parts], found[0], strict=True):
        assert ours.is_meta and ours.shape == real.shape and ours.dtype == real.dtype
    assert ops.quantized_range(w, form).shape == span.shape


def test_what_does_not_fit_is_refused():
    w, v, span = drawn((4, 64), "int4")
    for arguments, message in (((w, v[:, :3], span), r"offset is float32 \[4, 3\] on cpu, wanted float32 \[4, 64\]"),
                               ((w, v, span[:1]), r"range is float32 \[1, 4\] on cpu, wanted float32 \[2, 4\]"),
                               ((w.half(), v, span), "weight is float16 .*, wanted float32"),
                               ((w, v, span.double()), "range is float64")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.learned_values(*arguments, "int4")
