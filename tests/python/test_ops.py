"""torch.ops.limbeck.* as a Python user meets them: values, derivatives, schemas, meta and fake tensors, refusals."""

import os
import pathlib

import dropout_masks
import pytest
import torch

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
ops = torch.ops.limbeck

EPS = 1e-6
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)  # of three groups; the second is empty


def rms_norm_reference(x, weight, unit_offset):
    normalized = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    return normalized * (1 + weight if unit_offset else weight)


def rotary_reference(x, cos, sin):
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def tensors(*shapes, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def angles():
    angle = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float32)
    return angle.cos(), angle.sin()


def point(x):
    return torch.stack([x[0], x[1].abs() + 0.3])  # of the upper half plane


def resolvent_reference(a, b, c, x, causal):
    z = torch.view_as_complex(point(x))

    def diagonal(n):
        matrix = torch.diag_embed(a[:, :n]) + torch.diag_embed(b[:, : n - 1], 1) + torch.diag_embed(c[:, : n - 1], -1)
        return torch.linalg.inv(matrix - z * torch.eye(n, dtype=a.dtype)).diagonal(0, -2, -1)

    n = a.shape[1]
    whole = torch.stack([diagonal(k + 1)[:, k] for k in range(n)], 1) if causal else diagonal(n)
    return torch.view_as_real(whole)


# name -> (operator of its differentiable tensors, reference, shapes)
CASES = {
    "rms_norm": (
        lambda x, w: ops.rms_norm(x, w, EPS),
        lambda x, w: rms_norm_reference(x, w, False),
        [(3, 5, 21), (21,)],
    ),
    "rms_norm_offset": (
        lambda x, w: ops.rms_norm(x, w, EPS, True),
        lambda x, w: rms_norm_reference(x, w, True),
        [(4, 18), (18,)],
    ),
    "layer_norm": (
        lambda x, w, b: ops.layer_norm(x, w, b, EPS),
        lambda x, w, b: torch.nn.functional.layer_norm(x, w.shape, w, b, EPS),
        [(2, 3, 19), (19,), (19,)],
    ),
    "layer_norm_no_bias": (
        lambda x, w: ops.layer_norm(x, w, None, EPS),
        lambda x, w: torch.nn.functional.layer_norm(x, w.shape, w, None, EPS),
        [(5, 16), (16,)],
    ),
    "swiglu": (ops.swiglu, lambda g, u: torch.nn.functional.silu(g) * u, [(3, 37), (3, 37)]),
    "geglu_tanh": (
        ops.geglu_tanh,
        lambda g, u: torch.nn.functional.gelu(g, approximate="tanh") * u,
        [(3, 37), (3, 37)],
    ),
    "dropout": (
        lambda x: ops.dropout(x, torch.arange(6, device=x.device), 9, 0.4),
        lambda x: x * dropout_masks.kept(6, 37, 9, 0.4).view(x.shape) / 0.6,
        [(2, 3, 37)],
    ),
    "grouped_linear": (
        lambda x, w: ops.grouped_linear(x, w, ENDS.to(x.device)),
        lambda x, w: torch.cat([x[:2] @ w[0].T, x[2:] @ w[2].T]),
        [(5, 3), (3, 4, 3)],
    ),
    "grouped_outer": (
        lambda a, b: ops.grouped_outer(a, b, ENDS.to(a.device)),
        lambda a, b: torch.stack([a[:2].T @ b[:2], a.new_zeros(4, 3), a[2:].T @ b[2:]]),
        [(5, 4), (5, 3)],
    ),
    **{
        name: (
            lambda a, b, c, x, causal=causal: ops.resolvent(a, b, c, point(x), causal),
            lambda a, b, c, x, causal=causal: resolvent_reference(a, b, c, x, causal),
            [(2, 5), (2, 4), (2, 4), (2,)],
        )
        for name, causal in (("resolvent", True), ("resolvent_both_ways", False))
    },
    "rotary_embedding": (
        lambda x: ops.rotary_embedding(x, *angles()),
        lambda x: rotary_reference(x, *angles()),
        [(2, 3, 2, 10)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_composition(name):
    ours, reference, shapes = CASES[name]
    inputs = tensors(*shapes)
    got, want = ours(*inputs), reference(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rotary_of_both_is_that_of_each():
    q, k = tensors((2, 3, 4, 10), (2, 3, 2, 10))
    both = ops.rotary_embedding_of_both(q, k, *angles())
    each = [ops.rotary_embedding(x, *angles()) for x in (q, k)]
    gradients = [torch.autograd.grad(sum((y**2).sum() for y in ys), [q, k]) for ys in (both, each)]
    for a, b in zip((*both, *gradients[0]), (*each, *gradients[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    ours, _, shapes = CASES[name]
    assert torch.autograd.gradcheck(ours, tensors(*shapes))


def opcheck_samples():
    x, w, b = tensors((6, 24), (24,), (24,), dtype=torch.float32)
    gate, up = tensors((6, 24), (6, 24), dtype=torch.bfloat16)
    heads, fewer = tensors((2, 3, 2, 10), (2, 3, 1, 10), dtype=torch.float32)
    return {
        "rms_norm": (x, w, EPS, True),
        "layer_norm": (x, w, b, EPS),
        "swiglu": (gate, up),
        "geglu_tanh": (gate, up),
        "dropout": (x, torch.arange(6), -7, 0.4),
        "grouped_linear": (*tensors((5, 3), (3, 4, 3), dtype=torch.float32), ENDS),
        "grouped_outer": (*tensors((5, 4), (5, 3), dtype=torch.float32), ENDS),
        "resolvent": (*tensors((2, 5), (2, 4), (2, 4), dtype=torch.float32), torch.tensor([0.2, 0.7])),
        "continued_resolvent": (x.detach(), x.detach(), x.detach(), torch.tensor([0.2, 0.7]), torch.zeros(6, 2, dtype=torch.float64)),
        "rotary_embedding": (heads, *angles()),
        "rotary_embedding_of_both": (heads, fewer, *angles()),
        "sample_ids": (x.detach(), 0.7, 5, 0.9, 3, 1),
    }


@pytest.mark.parametrize("name", opcheck_samples())
def test_opcheck(name):
    """Schema, autograd registration, fake tensors, and training under the compiler's front end with dynamic shapes."""
    torch.library.opcheck(getattr(ops, name).default, opcheck_samples()[name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_meta_equals_real(name, dtype):
    ours, _, shapes = CASES[name]
    if name.startswith("resolvent") and dtype != torch.float32:
        with pytest.raises(RuntimeError, match=r"\[resolvent\] a is .*float16.*, wanted float32 or float64"):
            ours(*tensors(*shapes, dtype=dtype))
        return
    if name == "rotary_embedding":  # its angles must be on meta as well
        def ours(x):
            return ops.rotary_embedding(x, *(a.to(x.device) for a in angles()))
    real = tensors(*shapes, dtype=dtype)
    meta = [t.detach().to("meta").requires_grad_() for t in real]
    y, m = ours(*real), ours(*meta)
    assert m.is_meta
    real_grads = torch.autograd.grad(y, real, torch.ones_like(y))
    meta_grads = torch.autograd.grad(m, meta, torch.ones_like(m))
    for a, b in zip((y, *real_grads), (m, *meta_grads), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "swiglu", "geglu_tanh"])
def test_mixed_dtypes_are_refused(name):
    ours, _, shapes = CASES[name]
    inputs = tensors(*shapes, dtype=torch.bfloat16)
    for i in range(1, len(inputs)):
        mixed = list(inputs)
        mixed[i] = mixed[i].detach().float()
        with pytest.raises(RuntimeError, match=rf"\[{name}\] .* is float32 .*, wanted bfloat16 as"):
            ours(*mixed)


def test_autocast_changes_nothing():
    inputs = tensors((6, 24), (24,), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.rms_norm(*inputs, EPS)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ops.rms_norm(*inputs, EPS))


def test_a_second_derivative_is_refused():
    x, w = tensors((2, 8), (8,))
    (first,) = torch.autograd.grad(ops.rms_norm(x, w, EPS).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), x)


def test_the_weight_gradient_keeps_its_bits_on_any_number_of_threads():
    x, w = tensors((517, 200), (200,), dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(torch.autograd.grad(ops.rms_norm(x, w, EPS).sum(), (x, w)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
