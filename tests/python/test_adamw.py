"""torch.ops.limbeck's optimizer operators against torch.optim.AdamW itself."""

import os
import pathlib

import pytest
import torch

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
ops = torch.ops.limbeck

RATE, DECAY, STEPS = 1e-3, 0.1, 50


def gradients(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(11)
    return [(torch.randn(shape, generator=generator) * 0.02).to(dtype) for _ in range(STEPS)]


def torch_adamw(start, grads, **options):
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=DECAY, **options)
    for gradient in grads:
        weight.grad = gradient.clone()
        optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def ours(start, grads, master=None):
    weight = start.clone()
    wide = torch.float64 if start.dtype == torch.float64 else torch.float32
    first, second = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    masters = [] if master is None else [master]
    for step, gradient in enumerate(grads, start=1):
        ops.adamw_step_([weight], [gradient], masters, [first], [second], step, RATE, weight_decay=DECAY)
    return weight, first, second


def relative(got, wanted):
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=["loop", "fused", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fifty_updates_equal_torch_optim_adamw(dtype, options):
    start, grads = torch.randn(129, 37, generator=torch.Generator().manual_seed(1)).to(dtype), gradients((129, 37), dtype)
    for got, wanted in zip(ours(start, grads), torch_adamw(start, grads, **options), strict=True):
        assert relative(got, wanted) <= (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_follow_the_float32_run_of_their_masters(dtype):
    start, grads = torch.randn(64, 33, generator=torch.Generator().manual_seed(1)).to(dtype), gradients((64, 33), dtype)
    master = start.float()
    weight, _, _ = ours(start, grads, master)
    wanted, _, _ = torch_adamw(start.float(), [g.float() for g in grads])
    assert relative(master, wanted) <= 1e-6
    assert torch.equal(weight, master.to(dtype))


def test_half_weights_without_master_are_refused():
    weight, moment = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"adamw_step_.*bfloat16.*without a master"):
        ops.adamw_step_([weight], [weight], [], [moment], [moment], 1, RATE)


def test_square_sums_and_accumulate():
    x = torch.randn(10007, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert abs(float(ops.square_sums([x]).sum()) / float(x.double().square().sum()) - 1) < 1e-6
    total = torch.ones(10007)
    ops.accumulate_(total, x)
    assert torch.equal(total, 1 + x.float())


@pytest.mark.parametrize("name", ["adamw_step_", "square_sums", "accumulate_"])
def test_schemas_say_what_is_written(name):
    x, wide = torch.randn(7).bfloat16(), torch.zeros(7)
    arguments = {
        "adamw_step_": ([x], [x.clone()], [wide], [wide.clone()], [wide.clone()], 1, RATE),
        "square_sums": ([x, x[:3]],),
        "accumulate_": (wide, x),
    }[name]
    torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=["test_schema", "test_faketensor"])
