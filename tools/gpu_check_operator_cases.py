"""The operators that tools/gpu_check times: ours, the same by PyTorch and others, and the FLOPs and bytes that it takes.

Sizes are those of a student of 0.6B at 8,192 tokens; `small` has a dry run's. Each case is forward and backward, but
for those of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPS = 1e-6
OURS = "Limbeck"


class Unavailable(Exception):
    """What a case needs is not here; says what."""


@dataclass
class Case:
    """A contender gives the tensors that it computed. `alike`: peers that compute the same, and so are compared."""

    name: str
    contenders: dict[str, Callable[[], list[torch.Tensor]]]
    flops: float
    moved: float  # bytes
    tolerance: float  # of the norm of each result
    dtype: str = "bfloat16"
    alike: tuple[str, ...] = ("PyTorch",)
    ways: str = "forward and backward"
    note: str = ""


class Sizes:
    def __init__(self, small: bool):
        self.batch, self.length = (2, 16) if small else (4, 2048)
        self.width, self.inner, self.teacher = (32, 48, 64) if small else (1024, 3072, 2048)
        self.heads, self.kv_heads, self.head_size = (4, 2, 16) if small else (16, 8, 128)
        self.vocabulary = 101 if small else 151936
        self.layers = 1 if small else 28

    @property
    def tokens(self) -> int:
        return self.batch * self.length


class Maker:
    def __init__(self, small: bool, device: str, flash_attention_3: str = ""):
        self.flash_attention_3 = flash_attention_3  # a library of it
        self.sizes, self.device, self.ops = Sizes(small), device, torch.ops.limbeck
        self.draw = torch.Generator(device).manual_seed(3)

    def drawn(self, *size: int, dtype=torch.bfloat16, scale: float = 1.0, learned: bool = True) -> torch.Tensor:
        made = torch.randn(size, generator=self.draw, device=self.device).mul_(scale).to(dtype)
        return made.requires_grad_() if learned else made

    def both_ways(self, forward: Callable, inputs: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """The result and the gradients of all inputs."""
        self.draw.manual_seed(7)  # the same gradient for all contenders
        with torch.no_grad():
            grad = self.drawn(*forward(*inputs).shape, dtype=inputs[0].dtype, learned=False)

        def work() -> list[torch.Tensor]:
            result = forward(*inputs)
            return [result.detach(), *torch.autograd.grad(result, inputs, grad)]

        return work

    def among(self, name: str, contenders: dict[str, Callable], inputs: list, moved: float, flops: float = 0, tolerance: float = 0.02,
              **more) -> Case:  # fmt: skip
        made = {who: self.both_ways(forward, inputs) for who, forward in contenders.items()}
        return Case(name, made, flops, moved, tolerance, **more)


def liger(path: str):
    """A name of Liger's, or None: no dependency of ours."""
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(f"liger_kernel.{module}"), name)
    except (ImportError, AttributeError, RuntimeError, OSError):
        return None


def rms_norm(m: Maker, name: str, rows: int, width: int) -> Case:
    x, w = m.drawn(rows, width), m.drawn(width)
    contenders = {OURS: lambda x, w: m.ops.rms_norm(x, w, EPS), "PyTorch": lambda x, w: F.rms_norm(x, (width,), w, EPS)}
    if (function := liger("ops.rms_norm.LigerRMSNormFunction")) and m.device == "cuda":
        contenders["Liger"] = lambda x, w: function.apply(x, w, EPS, 0.0, "llama", False)
    return m.among(name, contenders, [x, w], moved=10.0 * x.numel())


def layer_norm(m: Maker) -> Case:
    s = m.sizes
    x, w, b = m.drawn(s.tokens, s.width), m.drawn(s.width), m.drawn(s.width)
    return m.among("layer norm", {OURS: lambda x, w, b: m.ops.layer_norm(x, w, b, EPS),
                                  "PyTorch": lambda x, w, b: F.layer_norm(x, (s.width,), w, b, EPS)}, [x, w, b], moved=10.0 * x.numel())  # fmt: skip


def gated(m: Maker, name: str) -> Case:
    s = m.sizes
    gate, up = m.drawn(s.tokens, s.inner), m.drawn(s.tokens, s.inner)
    plain = {"swiglu": lambda g, u: F.silu(g) * u, "geglu_tanh": lambda g, u: F.gelu(g, approximate="tanh") * u}[name]
    contenders = {OURS: getattr(m.ops, name), "PyTorch": plain}
    theirs = {"swiglu": "ops.swiglu.LigerSiLUMulFunction", "geglu_tanh": "ops.geglu.LigerGELUMulFunction"}[name]
    if (function := liger(theirs)) and m.device == "cuda":
        # It writes gradients over what it kept, and so gets copies; their time is in its number.
        contenders["Liger with copies"] = lambda g, u: function.apply(g.clone(), u.clone())
    return m.among(name, contenders, [gate, up], moved=16.0 * gate.numel())


def rotary(m: Maker) -> Case:
    s = m.sizes
    x = m.drawn(s.batch, s.length, s.heads, s.head_size)
    angle = m.drawn(1, s.length, s.head_size // 2, dtype=torch.float32, learned=False)
    cos, sin = angle.cos(), angle.sin()
    wide_cos, wide_sin = (torch.cat([a, a], -1).unsqueeze(2).to(x.dtype) for a in (cos, sin))

    def plain(x):
        first, second = x.chunk(2, -1)
        return x * wide_cos + torch.cat([-second, first], -1) * wide_sin

    return m.among("rotary", {OURS: lambda x: m.ops.rotary_embedding(x, cos, sin), "PyTorch": plain}, [x], moved=8.0 * x.numel())


def resolvent(m: Maker) -> Case:
    """Of the whole matrix, beside dense inverses: O(n^3), so a few rows."""
    rows, n = 4, m.sizes.length
    a, b, c = (m.drawn(rows, width, dtype=torch.float32, scale=0.5) for width in (n, n - 1, n - 1))
    z = torch.tensor([0.3, 1.5], device=m.device)

    def plain(a, b, c):
        a, b, c = (t.to(torch.complex128) for t in (a, b, c))
        shift = torch.eye(n, dtype=a.dtype, device=m.device) * torch.complex(*z.double())
        inverse = torch.linalg.inv(torch.diag_embed(a) + torch.diag_embed(b, 1) + torch.diag_embed(c, -1) - shift)
        return torch.view_as_real(inverse.diagonal(dim1=-2, dim2=-1)).float()

    # Forward and backward: seven passes over numbers of float64, of 16 bytes a position, and the arguments.
    return m.among("resolvent", {OURS: lambda a, b, c: m.ops.resolvent(a, b, c, z, False), "PyTorch, dense": plain}, [a, b, c],
                   moved=200.0 * a.numel(), tolerance=1e-5, dtype="float32", alike=("PyTorch, dense",))  # fmt: skip


def resolvent_of_a_long_row(m: Maker) -> Case:
    """One sequence of one head: all of a GPU is to work on it. Nobody else computes it."""
    n = m.sizes.length * 64
    a, b, c = (m.drawn(1, width, dtype=torch.float32, scale=0.5) for width in (n, n - 1, n - 1))
    z = torch.tensor([0.3, 1.5], device=m.device)
    return m.among("resolvent, a long row", {OURS: lambda a, b, c: m.ops.resolvent(a, b, c, z, True)}, [a, b, c],
                   moved=140.0 * n, dtype="float32", alike=())  # fmt: skip


def tridiagonal_systems(m: Maker) -> Case:
    """As many right sides as Woodbury's identity has, beside dense solutions: O(n^3), so a few rows."""
    rows, n = 4, m.sizes.length
    columns = math.ceil(math.log2(n))
    a, b, c = (m.drawn(rows, width, dtype=torch.float64, scale=0.3) for width in (n, n - 1, n - 1))
    right = m.drawn(rows, n, columns, 2, dtype=torch.float64)
    z = torch.tensor([0.3, 1.5], device=m.device, dtype=torch.float64)

    def plain(a, b, c, right):
        matrix = torch.diag_embed(a) + torch.diag_embed(b, 1) + torch.diag_embed(c, -1)
        shift = torch.eye(n, dtype=torch.complex128, device=m.device) * torch.complex(*z)
        return torch.view_as_real(torch.linalg.solve(matrix - shift, torch.view_as_complex(right)))

    contenders = {OURS: lambda a, b, c, right: m.ops.tridiagonal_solve(a, b, c, z.expand(rows, 2), right), "PyTorch, dense": plain}
    # Three passes over right sides and solution each way.
    return m.among("tridiagonal systems", contenders, [a, b, c, right], moved=96.0 * right.numel() / 2, tolerance=1e-9, dtype="float64",
                   alike=("PyTorch, dense",))  # fmt: skip


def rows_as_codes(m: Maker) -> Case:
    """Straight through: PyTorch's gradient is made to be the same."""
    x = m.drawn(m.sizes.tokens, m.sizes.heads, dtype=torch.float32)

    def plain(x):
        scale = x.detach().abs().amax(-1, keepdim=True) / 127
        return x + ((x.detach() / scale).round() * scale - x.detach())

    return m.among("rows as 8-bit codes", {OURS: m.ops.seen_through_row_codes, "PyTorch": plain}, [x], moved=16.0 * x.numel(), tolerance=1e-6,
                   dtype="float32")  # fmt: skip


def attention(m: Maker, dtype: str = "bfloat16") -> Case:
    s, kind = m.sizes, getattr(torch, dtype)
    q = m.drawn(s.batch, s.length, s.heads, s.head_size, dtype=kind)
    k, v = (m.drawn(s.batch, s.length, s.kv_heads, s.head_size, dtype=kind) for _ in range(2))
    scale = 1 / math.sqrt(s.head_size)

    def sdpa(q, k, v):
        turned = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(*turned, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)

    pairs = s.batch * s.heads * s.length**2 / 2
    return m.among(f"attention, causal, {dtype}", {OURS: lambda q, k, v: m.ops.attention(q, k, v, scale=scale), "PyTorch": sdpa},
                   [q, k, v], flops=3.5 * 4 * pairs * s.head_size, moved=q.element_size() * 6.0 * (q.numel() + k.numel()),
                   tolerance=1e-4 if dtype == "float32" else 0.02, dtype=dtype)  # fmt: skip


def attention_by_flash_attention_3(m: Maker) -> Case:
    """Beside FlashAttention 2, that is what computes without a library. On the CPU its attention stands in the place of both."""
    if not m.flash_attention_3:
        raise Unavailable("no library of FlashAttention 3: name one by --flash-attention-3 LIB.so")
    on_gpu = m.device == "cuda"
    if on_gpu and torch.cuda.get_device_capability() != (9, 0):
        raise Unavailable(f"compute capability {torch.cuda.get_device_capability()}: FlashAttention 3 is for 9.0")

    def by(library: str):
        def forward(q, k, v):
            if on_gpu:  # of the process, until the next one says otherwise
                m.ops.use_flash_attention_3(library)
            return m.ops.attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]))

        return forward

    plain = attention(m)
    contenders = {OURS: by(m.flash_attention_3), "FlashAttention 2": by("")}
    s = m.sizes
    q = m.drawn(s.batch, s.length, s.heads, s.head_size)
    k, v = (m.drawn(s.batch, s.length, s.kv_heads, s.head_size) for _ in range(2))
    return m.among("attention by FlashAttention 3", contenders, [q, k, v], flops=plain.flops, moved=plain.moved,
                   alike=("FlashAttention 2",), note="" if on_gpu else "the CPU's attention in the place of both")  # fmt: skip


def head_inputs(m: Maker) -> list[torch.Tensor]:
    s = m.sizes
    student, weight = m.drawn(s.tokens, s.width), m.drawn(s.vocabulary, s.width, scale=0.06)
    teacher, teacher_weight = m.drawn(s.tokens, s.teacher, learned=False), m.drawn(s.vocabulary, s.teacher, scale=0.04, learned=False)
    return [student, weight, teacher, teacher_weight]


def gradients_of(loss: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    def work() -> list[torch.Tensor]:
        value = loss()
        return [value.detach().float().reshape(()), *torch.autograd.grad(value, inputs)]

    return work


def head_and_kl(m: Maker) -> Case:
    s = m.sizes
    student, weight, teacher, teacher_weight = head_inputs(m)
    ones = torch.full((s.tokens,), 1 / s.tokens, device=m.device)

    def ours():
        return m.ops.head_loss(student, weight, teacher, teacher_weight, None, ones, torch.zeros_like(ones), divergence="forward_kl",
                               vocabulary=s.vocabulary)[0]  # fmt: skip

    def run_of(begin: int, end: int):
        with torch.no_grad():
            wanted = F.log_softmax((teacher[begin:end] @ teacher_weight.T).float(), -1)
        return F.kl_div(F.log_softmax((student[begin:end] @ weight.T).float(), -1), wanted, reduction="sum", log_target=True) / s.tokens

    def in_runs(length: int = 1024):
        totals = [torch.zeros((), device=m.device), torch.zeros_like(student), torch.zeros_like(weight)]
        for begin in range(0, s.tokens, length):
            loss = run_of(begin, begin + length)
            for total, part in zip(totals, (loss.detach(), *torch.autograd.grad(loss, [student, weight]))):
                total += part
        return totals

    contenders = {OURS: gradients_of(ours, [student, weight]), "PyTorch": gradients_of(lambda: run_of(0, s.tokens), [student, weight]),
                  "PyTorch in runs": in_runs}  # fmt: skip
    function = liger("chunked_loss.LigerFusedLinearJSDLoss")
    if function and m.device == "cuda":
        fused = function(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
        labels = torch.zeros(s.tokens, dtype=torch.long, device=m.device)
        contenders["Liger fused JSD, beta 0"] = gradients_of(lambda: fused(student, weight, teacher, teacher_weight, labels), [student, weight])
    products = 2.0 * s.tokens * s.vocabulary * (3 * s.width + s.teacher)
    return Case("head and KL", contenders, products, 2.0 * s.vocabulary * (3 * s.width + s.teacher), 0.03, alike=("PyTorch in runs",))


def head_and_cross_entropy(m: Maker) -> Case:
    s = m.sizes
    student, weight, _, _ = head_inputs(m)
    labels = torch.randint(0, s.vocabulary, (s.tokens,), generator=m.draw, device=m.device)
    ones = torch.full((s.tokens,), 1 / s.tokens, device=m.device)

    def ours():
        return m.ops.head_loss(student, weight, None, None, labels, torch.zeros_like(ones), ones, divergence="none",
                               vocabulary=s.vocabulary)[0]  # fmt: skip

    contenders = {OURS: ours, "PyTorch": lambda: F.cross_entropy((student @ weight.T).float(), labels)}
    if m.device == "cuda":
        if function := liger("ops.fused_linear_cross_entropy.LigerFusedLinearCrossEntropyFunction"):
            contenders["Liger"] = lambda: function.apply(student, weight, labels)[0]
        try:
            from cut_cross_entropy import linear_cross_entropy

            contenders["cut-cross-entropy"] = lambda: linear_cross_entropy(student, weight, labels)
        except (ImportError, RuntimeError, OSError):
            pass
    made = {who: gradients_of(loss, [student, weight]) for who, loss in contenders.items()}
    return Case("head and cross-entropy", made, 6.0 * s.tokens * s.vocabulary * s.width, 2.0 * 3 * s.vocabulary * s.width, 0.03)


def adamw(m: Maker) -> Case:
    """Float32 weights on both sides, as PyTorch's fused one has them; one step from zero moments is compared."""
    s = m.sizes
    shapes = [(s.width, s.inner)] * 3 * s.layers + [(2 * s.width, s.width)] * 3 * s.layers + [(s.width,)] * 2 * s.layers
    start = [m.drawn(*shape, dtype=torch.float32, scale=0.02, learned=False) for shape in shapes]
    grads = [m.drawn(*shape, dtype=torch.float32, scale=0.01, learned=False) for shape in shapes]
    mine = [t.clone() for t in start]
    first, second = ([torch.zeros_like(t) for t in start] for _ in range(2))
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    optimizer = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.1, fused=True)
    for parameter, grad in zip(theirs, grads):
        parameter.grad = grad
    taken = [0]

    def ours() -> list[torch.Tensor]:
        taken[0] += 1
        m.ops.adamw_step_(mine, grads, [], first, second, taken[0], 1e-3, weight_decay=0.1)
        return mine

    def fused() -> list[torch.Tensor]:
        optimizer.step()
        return [parameter.detach() for parameter in theirs]

    count = sum(t.numel() for t in start)
    return Case("AdamW, float32", {OURS: ours, "PyTorch": fused}, 0, 28.0 * count, 1e-5, dtype="float32")


def linear_float16(m: Maker) -> Case:
    s = m.sizes
    x, w = m.drawn(s.tokens, s.width, dtype=torch.float16), m.drawn(s.inner, s.width, dtype=torch.float16, scale=0.03)
    return m.among("linear, float16", {OURS: m.ops.linear, "PyTorch": F.linear}, [x, w], flops=6.0 * s.tokens * s.width * s.inner,
                   moved=2.0 * 3 * (x.numel() + w.numel()), tolerance=2e-3, dtype="float16")  # fmt: skip


def linear_of_experts(m: Maker, dtype: str) -> Case:
    """Tokens sorted by expert, two experts a token; the loop knows on the host how many rows each has."""
    s, kind, experts = m.sizes, getattr(torch, dtype), 8
    rows = 2 * s.tokens
    ends = [rows * (expert + 1) ** 2 // experts**2 for expert in range(experts)]
    of_groups = list(zip([0, *ends], ends))
    on_device = torch.tensor(ends, dtype=torch.int32, device=m.device)
    x, w = m.drawn(rows, s.width, dtype=kind), m.drawn(experts, s.inner, s.width, dtype=kind, scale=0.03)
    contenders = {OURS: lambda x, w: m.ops.grouped_linear(x, w, on_device),
                  "a loop of PyTorch's": lambda x, w: torch.cat([F.linear(x[begin:end], one) for (begin, end), one in zip(of_groups, w.unbind())])}  # fmt: skip
    return m.among(f"linear of {experts} experts, {dtype}", contenders, [x, w], flops=6.0 * rows * s.width * s.inner,
                   moved=x.element_size() * (3.0 * rows * (s.width + s.inner) + 3 * w.numel()),
                   tolerance=1e-4 if dtype == "float32" else 0.02, dtype=dtype, alike=("a loop of PyTorch's",))  # fmt: skip


def linear_quantized(m: Maker, kind: str) -> Case:
    """A frozen weight: PyTorch's is the one that the codes stand for, kept unpacked."""
    s = m.sizes
    parts, plain = packed_weight(m, kind)
    x = m.drawn(s.tokens, s.width)
    moved = 2.0 * (2 * s.tokens * (s.width + s.inner)) + 2 * sum(part.nbytes for part in parts)
    return m.among(f"linear, {kind} weight", {OURS: lambda x: m.ops.quantized_linear(x, parts, kind, s.inner, s.width),
                                              "PyTorch": lambda x: F.linear(x, plain)},
                   [x], flops=4.0 * s.tokens * s.width * s.inner, moved=moved)  # fmt: skip


def packed_weight(m: Maker, kind: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    s = m.sizes
    weight = torch.randn(s.inner, s.width, generator=torch.Generator().manual_seed(2))
    parts = [part.to(m.device) for part in m.ops.quantize_weight(weight, kind)]
    return parts, m.ops.dequantize_rows(parts, kind, s.inner, s.width, 0, s.inner).to(torch.bfloat16)


def packed_embedding(m: Maker, kind: str) -> Case:
    """A lookup in a packed table; PyTorch's is the one that the codes stand for, kept unpacked."""
    s = m.sizes
    parts, plain = packed_weight(m, kind)
    ids = torch.randint(0, s.inner, (s.tokens,), generator=torch.Generator().manual_seed(5)).to(m.device)
    return Case(f"embedding, {kind} table", {OURS: lambda: [m.ops.quantized_rows(ids, parts, kind, s.inner, s.width, torch.bfloat16)],
                                             "PyTorch": lambda: [F.embedding(ids, plain)]},
                0, 2.0 * s.tokens * s.width + sum(part.nbytes for part in parts), 0, ways="forward")  # fmt: skip


def linear_of_one_row(m: Maker, kind: str) -> Case:
    """What a generated token asks of a layer, forward alone: the codes and scales are all that is worth counting."""
    s = m.sizes
    parts, plain = packed_weight(m, kind)
    x = m.drawn(1, s.width, learned=False)
    moved = 2.0 * (s.width + s.inner) + sum(part.nbytes for part in parts)
    return Case(f"linear, {kind} weight, 1 row", {OURS: lambda: [m.ops.quantized_linear(x, parts, kind, s.inner, s.width)],
                                                  "PyTorch": lambda: [F.linear(x, plain)]},
                2.0 * s.width * s.inner, moved, 0.02, ways="forward")  # fmt: skip


def dropout(m: Maker) -> Case:
    """Other masks than PyTorch's, so only times are compared."""
    s = m.sizes
    x = m.drawn(s.tokens, s.width)
    tokens = torch.arange(s.tokens, device=m.device)
    return m.among("dropout", {OURS: lambda x: m.ops.dropout(x, tokens, 9, 0.1), "PyTorch": lambda x: F.dropout(x, 0.1)}, [x],
                   moved=8.0 * x.numel(), alike=())  # fmt: skip


def drawn_numbers(rows: int, seed: int, step: int) -> list[float]:
    """What each row draws of sample_ids, in (0, 1)."""
    golden, bits = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
        return x ^ (x >> 31)

    key = mixed((seed + golden) & bits)
    of_rows = (mixed((key + row * golden) & bits) for row in range(rows))
    return [((mixed((of_row + step * golden) & bits) >> 32) + 0.5) / 2**32 for of_row in of_rows]


def sampling(m: Maker) -> Case:
    """One token a row, by the same numbers on both sides; forward alone."""
    rows, top_k, top_p, temperature, seed, step = 8, 50, 0.95, 0.8, 3, 1
    logits = m.drawn(rows, m.sizes.vocabulary, scale=3.0, learned=False)
    numbers = torch.tensor(drawn_numbers(rows, seed, step), dtype=torch.float64, device=m.device).unsqueeze(1)

    def ours() -> list[torch.Tensor]:
        return [m.ops.sample_ids(logits, temperature, top_k, top_p, seed, step).double()]

    def sorted_ones() -> list[torch.Tensor]:
        score, ids = logits.double().div(temperature).sort(descending=True, stable=True)
        mass = (score[:, :top_k] - score[:, :1]).exp().cumsum(-1)
        last = torch.searchsorted(mass, top_p * mass[:, -1:]).clamp_max(top_k - 1)
        return [ids.gather(1, torch.searchsorted(mass, numbers * mass.gather(1, last), right=True)).squeeze(1).double()]

    return Case("sampling, a token of 8 rows", {OURS: ours, "PyTorch": sorted_ones}, 0, float(logits.nbytes), 1e-12)


# In this order: what the plan asks for first. Each is made when its turn comes, so that one that fails fails alone.
CASES: dict[str, Callable[[Maker], Case]] = {
    "head and KL": head_and_kl,
    "attention, bfloat16": attention,
    "attention by FlashAttention 3": attention_by_flash_attention_3,
    "norm of layers": lambda m: rms_norm(m, "RMS norm of layers", m.sizes.tokens, m.sizes.width),
    "norm of heads": lambda m: rms_norm(m, "RMS norm of heads", m.sizes.tokens * m.sizes.heads, m.sizes.head_size),
    "AdamW": adamw,
    "swiglu": lambda m: gated(m, "swiglu"),
    "rotary": rotary,
    "resolvent": resolvent,
    "resolvent of a long row": resolvent_of_a_long_row,
    "tridiagonal systems": tridiagonal_systems,
    "rows as 8-bit codes": rows_as_codes,
    "head and cross-entropy": head_and_cross_entropy,
    "linear, NF4": lambda m: linear_quantized(m, "nf4"),
    "linear, NF4, 1 row": lambda m: linear_of_one_row(m, "nf4"),
    "linear, int4": lambda m: linear_quantized(m, "int4"),
    "linear, int4, 1 row": lambda m: linear_of_one_row(m, "int4"),
    "linear, int8": lambda m: linear_quantized(m, "int8"),
    "linear, int8, 1 row": lambda m: linear_of_one_row(m, "int8"),
    "linear, int8-dynamic": lambda m: linear_quantized(m, "int8-dynamic"),
    "linear, int8-dynamic, 1 row": lambda m: linear_of_one_row(m, "int8-dynamic"),
    "embedding, int8": lambda m: packed_embedding(m, "int8"),
    "linear, float16": linear_float16,
    "linear of experts, bfloat16": lambda m: linear_of_experts(m, "bfloat16"),
    "linear of experts, float32": lambda m: linear_of_experts(m, "float32"),
    "linear of experts, float16": lambda m: linear_of_experts(m, "float16"),
    "geglu": lambda m: gated(m, "geglu_tanh"),
    "layer norm": layer_norm,
    "dropout": dropout,
    "sampling": sampling,
    "attention, float32": lambda m: attention(m, "float32"),
}
