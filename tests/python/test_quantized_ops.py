"""torch.ops.limbeck.quantize_weight and what it stands for: against bitsandbytes (nf4, nf4-double) and the formulas."""

from __future__ import annotations

import os
import pathlib

import bitsandbytes
import bitsandbytes.functional as bnb
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
ops = torch.ops.limbeck

# The last is a matrix whose rows begin inside blocks, with a last block and a last byte that are not full.
SHAPES = [(64, 64), (128, 320), (300, 512), (1, 64), (1, 3), (5, 77), (37, 333)]


def weight(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Magnitudes that differ from block to block, as trained weights' do."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.exp(torch.randn(shape[0], 1, generator=generator))
    return (values * 0.02).to(dtype)


def dequantized(parts: list[torch.Tensor], form: str, shape: tuple[int, int]) -> torch.Tensor:
    return ops.dequantize_rows(parts, form, *shape, 0, shape[0])


def reference_blockwise(values: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bitsandbytes' own PyTorch implementation, which its CPU library otherwise replaces by a table of 65,536 entries."""
    kernel = torch.ops.bitsandbytes.quantize_blockwise.default
    return kernel._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, values, code, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_that_of_bitsandbytes(shape, dtype):
    w = weight(shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")
    codes, scales = ops.quantize_weight(w, "nf4")
    assert torch.equal(codes, packed.flatten())
    assert torch.equal(scales, state.absmax)
    state.dtype = torch.float32
    assert torch.equal(dequantized([codes, scales], "nf4", shape), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantization_is_that_of_bitsandbytes(shape, seed):
    w = weight(shape, seed)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    codes, scale_codes, scales, offset = ops.quantize_weight(w, "nf4-double")
    assert torch.equal(codes, packed.flatten())
    assert torch.equal(offset, state.offset.view(1))
    exact = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")[1].absmax
    wanted_codes, wanted_scales = reference_blockwise(exact - state.offset, state.state2.code)
    assert torch.equal(scale_codes, wanted_codes)
    assert torch.equal(scales, wanted_scales)
    # bitsandbytes reads what we wrote, to the bit.
    state.absmax, state.state2.absmax = scale_codes, scales
    ours = dequantized([codes, scale_codes, scales, offset], "nf4-double", shape)
    assert torch.equal(ours, bnb.dequantize_4bit(packed, state))


def test_scale_codes_differ_from_the_table_of_bitsandbytes_only_where_the_table_rounds():
    """Its CPU library looks 8-bit codes up by the value rounded to 1 / 32,768: near a boundary it takes the neighbour."""
    different = total = 0
    for seed in range(12):
        w = weight((300, 512), seed)
        _, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
        _, scale_codes, scales, offset = ops.quantize_weight(w, "nf4-double")
        assert torch.equal(scales, state.state2.absmax)
        exact = ops.quantize_weight(w, "nf4")[1] - offset
        code, blocks = state.state2.code, torch.arange(len(exact)) // 256
        other = (scale_codes != state.absmax).nonzero().flatten()
        value = exact[other] / scales[blocks[other]]
        ours, theirs = code[scale_codes[other].long()], code[state.absmax[other].long()]
        assert ((value - ours).abs() <= (value - theirs).abs()).all()  # ours is the nearer one
        assert ((value - theirs).abs() - (value - ours).abs() <= 2 / 32768).all()
        different, total = different + len(other), total + len(exact)
    print(f"{different} of {total} scale codes differ from bitsandbytes {bitsandbytes.__version__}'s table")
    assert different < 0.02 * total


def test_a_last_block_of_zeros_is_that_of_bitsandbytes():
    w = torch.zeros(2, 37)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")
    codes, scales = ops.quantize_weight(w, "nf4")
    assert torch.equal(codes, packed.flatten()) and torch.equal(scales, state.absmax)


INT8 = {"int8": None, "int8-g128": 128, "int8-g64": 64, "int8-g32": 32, "int8-dynamic": None}


@pytest.mark.parametrize("form", INT8)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_its_formula(shape, form):
    w = weight(shape)
    groups = w.split(INT8[form] or shape[1], dim=1)
    scales = torch.stack([group.abs().amax(1) for group in groups], 1) / 127
    wide = torch.cat([scales[:, i : i + 1].expand_as(group) for i, group in enumerate(groups)], 1)
    codes = torch.round(w / wide).clamp(-127, 127).to(torch.int8)
    ours = ops.quantize_weight(w, form)
    assert torch.equal(ours[0], codes) and torch.equal(ours[1], scales if INT8[form] else scales[:, 0])
    assert torch.equal(dequantized(ours, form, shape), codes.float() * wide)


def test_int8_rounds_ties_to_even():
    w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert ops.quantize_weight(w, "int8")[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def in_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes of a row one after the other without a gap, the first one lowest; a row begins a word."""
    line = (codes.long()[..., None] >> torch.arange(bits) & 1).flatten(1)
    line = torch.nn.functional.pad(line, (0, -line.shape[1] % 32)).view(len(codes), -1, 32)
    return (line << torch.arange(32)).sum(2).to(torch.int32)


# Codes of few bits in words, by the values of a scale.
SHORT = {f"int{bits}{sym}{'' if size == 128 else f'-g{size}'}": size for bits in (4, 3, 2) for sym in ("", "-sym") for size in (128, 64, 32)}
INT4 = {form: size for form, size in SHORT.items() if form.startswith("int4")}


def bits_of(form: str) -> int:
    return int(form[3])


@pytest.mark.parametrize("form", SHORT)
@pytest.mark.parametrize("shape", [*SHAPES, (6, 128), (6, 129), (6, 300), (70, 100)])
def test_codes_in_words_are_their_formula(shape, form):
    w = weight(shape)
    bits, symmetric = bits_of(form), "sym" in form
    last, middle = 2**bits - 1, 2 ** (bits - 1)
    codes, scales, zeros, values = [], [], [], []
    for group in w.split(SHORT[form], dim=1):
        low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
        scale = torch.maximum(high, -low) / (last / 2) if symmetric else (high - low) / last
        zero = torch.full_like(scale, middle) if symmetric else torch.round(-low / scale).clamp(0, last)
        code = (torch.round(group / scale) + zero).clamp(0, last)
        codes.append(code), scales.append(scale), zeros.append(zero), values.append((code - zero) * scale)
    ours = ops.quantize_weight(w, form)
    assert torch.equal(ours[0], in_words(torch.cat(codes, 1), bits))
    assert torch.equal(ours[1], torch.cat(scales, 1))
    assert len(ours) == 2 if symmetric else torch.equal(ours[2], in_words(torch.cat(zeros, 1).T, bits).T)
    assert torch.equal(dequantized(ours, form, shape), torch.cat(values, 1))
    # And compressed-tensors' own packing has the same words.
    signed = (torch.cat(codes, 1) - middle).to(torch.int8)
    assert torch.equal(ours[0], pack_to_int32(signed, bits)) and torch.equal(unpack_from_int32(ours[0], bits, shape), signed)
    if not symmetric:
        assert torch.equal(ours[2], pack_to_int32((torch.cat(zeros, 1) - middle).to(torch.int8), bits, packed_dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["int8", *INT4, "int3-g64", "int2-sym-g32"])
def test_scales_of_half_types_are_rounded_up(form, dtype):
    w = weight((37, 333))
    exact, stored = ops.quantize_weight(w, form)[1], ops.quantize_weight(w, form, dtype)[1]
    assert stored.dtype == dtype
    down = torch.where(stored.float() == exact, stored, torch.nextafter(stored, torch.zeros_like(stored)))
    assert (stored.float() >= exact).all() and (down.float() <= exact).all()


FORMATS = ["int8", *INT4, "int3", "int3-sym-g32", "int2-g32", "int2-sym", "nf4", "nf4-double"]


@pytest.mark.parametrize("form", FORMATS)
def test_opcheck(form):
    """Schema, autograd registration, fake tensors, and training under the compiler's front end."""
    w = weight((6, 70))
    parts = ops.quantize_weight(w, form)
    x, bias = torch.randn(3, 70, requires_grad=True), torch.randn(6, requires_grad=True)
    torch.library.opcheck(ops.quantize_weight.default, (w, form))
    torch.library.opcheck(ops.dequantize_rows.default, (parts, form, 6, 70, 2, 3))
    torch.library.opcheck(ops.quantized_linear.default, (x, parts, form, 6, 70, bias))


@pytest.mark.parametrize("form", FORMATS)
def test_a_linear_from_python_is_that_of_the_dequantized_weight(form):
    shape = (70, 96)
    parts = ops.quantize_weight(weight(shape), form)
    plain = dequantized(parts, form, shape).double()
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(5)).requires_grad_()
    y = ops.quantized_linear(x, parts, form, *shape)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(y.double(), x.double() @ plain.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dx.double(), torch.ones(5, 70).double() @ plain, rtol=1e-5, atol=1e-6)
