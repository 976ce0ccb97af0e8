"""Learned rounding: its operators against the formulas in float64, values and gradients; and limbeck quantize
--rounding=learned against the same loop in plain PyTorch."""

from __future__ import annotations

import math
import os
import subprocess
import time
from pathlib import Path

import model_zoo
import pytest
import test_quantize_scores as scores
import token_rows
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError, build_folder
from safetensors.torch import load_file
from test_compensated_rounding import NF4, Stored
from test_quantize_policies import weighs_as_said
from test_quantize_scores import case  # noqa: F401
from test_quantized_ops import FORMATS, INT8, SHORT, bits_of, dequantized, ops, weight

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
    if form in INT8:
        return values.view(rows, -1).repeat_interleave(INT8[form] or columns, 1)[:, :columns]
    if form in SHORT:
        return values.view(rows, -1).repeat_interleave(SHORT[form], 1)[:, :columns]
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
    if form in INT8:
        scale = as_stored(each(span[0], form, shape) / 127)
        return scale * Rounded.apply(w / scale + v).clamp(-127, 127)
    last, middle = 2 ** bits_of(form) - 1, 2 ** (bits_of(form) - 1)
    if "sym" in form:
        scale = as_stored(each(span[0], form, shape) / (last / 2))
        return scale * ((Rounded.apply(w / scale + v) + middle).clamp(0, last) - middle)
    least, most = (each(end, form, shape) for end in span)
    scale = as_stored((most - least) / last)
    zero = Rounded.apply(-least / scale)
    return scale * ((Rounded.apply(w / scale + v) + zero).clamp(0, last) - zero)


def drawn(shape: tuple[int, int], form: str, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w = weight(shape)
    span = ops.quantized_range(w, form)
    return w, torch.rand(shape, generator=generator) - 0.5, span * (0.5 + 0.5 * torch.rand(span.shape, generator=generator))


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_offsets_and_by_its_own_range_it_is_rounding_to_nearest(shape, form):
    w = weight(shape)
    for scales in (torch.float32, torch.bfloat16, torch.float16):
        found = ops.quantize_learned(w, torch.zeros(shape), ops.quantized_range(w, form), form, scales)
        plain = ops.quantize_weight(w, form, scales)
        assert len(found) == len(plain) and all(torch.equal(one, other) for one, other in zip(found, plain, strict=True)), scales


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
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


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
def test_an_offset_of_a_half_moves_a_value_to_its_other_neighbour_alone(form, shape=(37, 128)):
    w = weight(shape)
    span = ops.quantized_range(w, form)
    codes = lambda v: Stored(ops.quantize_learned(w, v, span, form), form, shape).codes  # noqa: E731
    nearest = codes(torch.zeros(shape))
    for offset in (0.4999, -0.4999):
        change = codes(torch.full(shape, offset)) - nearest
        if form in INT8:
            change = change.to(torch.int8)
        assert set(change.unique().tolist()) <= {0, int(offset * 2.001)} and 0.2 < (change != 0).double().mean() < 0.8


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
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


LEARNED = {"rounding": "learned", "rounding-steps": 10}


def row_of_step(step: int, k: int, rows: int) -> int:
    stride = int(0.6180339887498949 * rows)
    while math.gcd(stride, rows) != 1:
        stride += 1
    return (step * min(rows, 8) + k) * stride % rows


def experts_of(net) -> dict[str, torch.Tensor]:
    """Stacks of experts, by name."""
    return {name.removeprefix("model."): weight.detach() for name, weight in net.named_parameters() if ".experts." in name}


def matrices_of(stack: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """By the names of a folder; gate and up are matrices of their own."""
    place, parts = stack.rpartition(".")[0], ("gate_proj", "up_proj") if stack.endswith("gate_up_proj") else ("down_proj",)
    return {f"{place}.{expert}.{part}": matrix for expert, both in enumerate(weight) for part, matrix in zip(parts, both.chunk(len(parts)), strict=True)}


class Block:
    """The second layer of a model, behind a first one of given weights, and its rows: all in plain PyTorch, float32.
    `still`: experts that do not learn."""

    still: tuple[str, ...] = ()

    def __init__(self, case, form: str, rows: int, before: dict[str, torch.Tensor]):  # noqa: F811
        self.net, self.form, self.rows = scores.model(case.base, torch.float32).requires_grad_(False), form, scores.rows_of(case, 0, rows)
        self.net.model.layers[1].register_forward_hook(lambda _, __, y: setattr(self, "output", y[0] if isinstance(y, tuple) else y))
        floats = {name: m.weight.detach() for name, m in scores.linears(self.net).items()}
        self.stacks = {name: matrices_of(name, weight) for name, weight in experts_of(self.net).items() if name.startswith("layers.1.")}
        floats |= {name: matrix.contiguous() for stack in self.stacks.values() for name, matrix in stack.items()}
        self.before, self.weights = before, {name: w for name, w in floats.items() if name.startswith("layers.1.")}
        self.spans = {name: ops.quantized_range(w, form) for name, w in self.weights.items()}
        of_first = {name: w for name, w in floats.items() if name in before}
        self.targets = [self.after(row, of_first | self.weights) for row in range(rows)]

    def after(self, row: int, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = self.before | weights
        named = {f"model.{name}.weight": w for name, w in weights.items() if ".experts." not in name}
        for stack, matrices in self.stacks.items():
            joined = torch.cat([weights[name] for name in matrices])
            named[f"model.{stack}"] = joined.view(self.net.get_parameter(f"model.{stack}").shape)
        torch.func.functional_call(self.net, named, (self.rows[row],))
        return self.output

    def error(self, row: int, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return (self.after(row, weights) - self.targets[row]).square().sum()

    def errors(self, weights: dict[str, torch.Tensor]) -> list[float]:
        with torch.no_grad():
            return [float(self.error(row, weights)) for row in range(len(self.rows))]

    def values(self, start: dict, offsets: dict, factors: dict) -> dict[str, torch.Tensor]:
        """Of int4, as the formula has it."""
        found = {}
        for name, w in start.items():
            span = [each(end, self.form, w.shape) for end in self.spans[name] * factors[name]]
            scale = (span[1] - span[0]) / 15 if len(span) == 2 else span[0] / 7.5
            zero = Rounded.apply(-span[0] / scale) if len(span) == 2 else 8
            found[name] = scale * ((Rounded.apply(w / scale + offsets[name]) + zero).clamp(0, 15) - zero)
        return found

    def learned(self, start: dict, before: list[float], steps: int) -> tuple[list[float], int, dict, dict]:
        offsets = {name: torch.zeros_like(w, requires_grad=True) for name, w in start.items()}
        factors = {name: torch.ones_like(span, requires_grad=True) for name, span in self.spans.items()}
        leaves, errors, least = [*offsets.values(), *factors.values()], [], math.inf
        for step in range(steps):
            rows = [row_of_step(step, k, len(self.rows)) for k in range(min(len(self.rows), 8))]
            values = self.values(start, offsets, factors)
            error = sum(self.error(row, values) for row in rows)
            errors.append(float(error.detach()))
            if errors[-1] / sum(before[row] for row in rows) < least:
                least, best_step = errors[-1] / sum(before[row] for row in rows), step
                best = {name: value.detach() for name, value in values.items()}
            slopes = torch.autograd.grad(error, leaves)
            with torch.no_grad():
                for i, (leaf, slope, name) in enumerate(zip(leaves, slopes, [*offsets, *factors], strict=True)):
                    if name.startswith(self.still):
                        continue
                    leaf -= (1 - step / steps) / steps * slope.sign()
                    leaf.clamp_(-0.5, 0.5) if i < len(offsets) else leaf.clamp_(0.5, 1)
        with torch.no_grad():
            return errors, best_step, best, self.values(start, offsets, factors)


def parts_in(folder: Path, name: str) -> list[torch.Tensor]:
    stored = load_file(folder / "model.safetensors")
    return [stored[f"model.{name}.weight_{part}"] for part in ("packed", "scale", "zero_point") if f"model.{name}.weight_{part}" in stored]


def stood_for(folder: Path, names: list[str], form: str) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "model.safetensors")
    return {name: dequantized(parts_in(folder, name), form, tuple(stored[f"model.{name}.weight_shape"].tolist())) for name in names}


@pytest.mark.parametrize("form", ["int4-g32", "int4-sym-g32"])
def test_a_layer_is_learned_as_plain_pytorch_learns_it(case, tmp_path, form):  # noqa: F811
    out, start, rows = tmp_path / "out", tmp_path / "start", 12
    flags = {"quantize": form, "dtype": "float32", "calibration-rows": rows}
    said = case.run(out, **flags, **LEARNED)["learned"]
    case.run(start, **flags, rounding="compensated")
    assert list(said) == ["layers.0", "layers.1"] and said["layers.0"]["kept"] == "compensated"  # as in the folder `start`
    first = [name for name in scores.linears(scores.model(case.base)) if name.startswith("layers.0.")]
    learned_as_by(Block(case, form, rows, stood_for(out, first, form)), said["layers.1"], out, start)


def test_a_layer_with_experts_is_learned_as_plain_pytorch_learns_it(tmp_path):
    """Behind a layer of floats. An expert that few tokens come to stays as it is."""
    form, rows, case = "int4-sym-g32", 12, scores.Case(tmp_path)
    torch.manual_seed(6)
    config = transformers.Qwen3MoeConfig(vocab_size=scores.VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                         num_experts_per_tok=2, num_experts=6, head_dim=16, moe_intermediate_size=32, norm_topk_prob=True,
                                         initializer_range=0.1, tie_word_embeddings=False, max_position_embeddings=64)  # fmt: skip
    case.base = tmp_path / "experts"
    net = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        net.model.layers[1].mlp.gate.weight[5] = -net.model.layers[1].mlp.gate.weight[:5].sum(0)
    net.save_pretrained(case.base)
    out, start, flags = tmp_path / "out", tmp_path / "start", {"quantize": form, "dtype": "float32", "calibration-rows": rows, "rule": "model.layers.0.** float32"}
    said = case.run(out, **flags, **LEARNED)
    rounded = case.run(start, **flags, rounding="compensated")["rounded_experts"]
    assert said["rounded_experts"] == rounded and list(said["learned"]) == ["layers.1"]
    block = Block(case, form, rows, {})
    still = rounded["layers.1.mlp.experts"]["to_nearest"]
    print(f"experts {still} stay as they are")
    block.still = tuple(f"layers.1.mlp.experts.{expert}." for expert in still)
    learned_as_by(block, said["learned"]["layers.1"], out, start)
    for name in block.weights:
        plain = ops.quantize_weight(block.weights[name], form)
        stayed = all(torch.equal(a, b) for a, b in zip(parts_in(out, name), plain, strict=True))
        assert stayed == name.startswith(block.still) if block.still else not stayed, name


def learned_as_by(block: Block, said: dict, out: Path, start: Path) -> None:
    """`said` of the folder `out`, whose layer began as `start` has it."""
    form, second = block.form, list(block.weights)
    nearest = {name: dequantized(ops.quantize_weight(w, form), form, w.shape) for name, w in block.weights.items()}
    tried = {"nearest": nearest, "compensated": stood_for(start, second, form)}
    errors = {name: block.errors(values) for name, values in tried.items()}
    assert sum(errors["compensated"]) < sum(errors["nearest"])
    moved = {name: ops.moved_to_codes(w, block.spans[name], parts_in(start, name), form) for name, w in block.weights.items()}
    losses, step, tried["best step"], tried["last step"] = block.learned(moved, errors["compensated"], LEARNED["rounding-steps"])
    # The sign of a slope that is all rounding differs, and a weight with it by two steps.
    assert said["errors"] == pytest.approx(losses, rel=1e-4)
    assert said["best_step"] == step
    errors |= {name: block.errors(tried[name]) for name in ("best step", "last step")}
    kept = min(errors, key=lambda name: sum(errors[name]))
    values = sum(y.numel() for y in block.targets)
    for key, name in (("nearest", "nearest"), ("compensated", "compensated"), ("learned", kept)):
        assert said[key] == pytest.approx(sum(errors[name]) / values, rel=1e-4), key
    assert said["kept"] == kept and kept.endswith("step") and said["learned"] < said["compensated"]
    other = total = 0
    for name in block.weights:
        found = stood_for(out, [name], form)[name]
        scale = Stored(parts_in(out, name), form, tuple(found.shape)).scale
        other, total = other + int(((found - tried[kept][name]).abs() > 0.5 * scale).sum()), total + found.numel()
    print(f"{form}: {other} of {total} codes differ; the losses by {max(abs(a / b - 1) for a, b in zip(said['errors'], losses, strict=True)):.1e}")
    assert other < 1e-3 * total


@pytest.mark.parametrize("form", ["int8", "int4", "int2", "nf4-double"])
def test_no_layer_is_worse_than_to_nearest_and_unseen_rows_are_nearer_to_the_floats(case, tmp_path, form):  # noqa: F811
    said = {way: case.run(tmp_path / way, quantize=form, dtype="float16", calibration_rows=24, rounding=way, rounding_steps=20 if way == "learned" else None)
            for way in ("nearest", "learned")}  # fmt: skip
    assert said["learned"]["measured"]["kl"] < said["nearest"]["measured"]["kl"]
    layers = said["learned"]["learned"]
    assert list(layers) == ["layers.0", "layers.1"] and said["learned"]["bytes"] == said["nearest"]["bytes"]
    for entry in layers.values():
        assert entry["learned"] <= entry["compensated"] and entry["learned"] < 0.9 * entry["nearest"] and len(entry["errors"]) == 20
    assert not (tmp_path / "learned.rounding").exists()


@pytest.mark.parametrize(("family", "form"), [("gemma2", "int8"), ("phi3", "int8"), ("qwen3-moe", "int8"), ("mixtral", "int8"), ("resnet-bk", "int8"),
                                              ("gpt2", "nf4")])  # fmt: skip
def test_the_layers_of_every_family_are_learned(case, tmp_path, family, form):  # noqa: F811
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    data = token_rows.write(tmp_path / "data", token_rows.random_documents(20, 16, 24, model_zoo.VOCABULARY, seed=5), model_zoo.VOCABULARY)
    said = case.run(tmp_path / "out", model=base, data=data, quantize=form, **LEARNED | {"rounding-steps": 4})
    experts = sum(".experts." in name and name.endswith("_packed") for name in load_file(tmp_path / "out" / "model.safetensors"))
    assert (experts > 0) == (family in ("qwen3-moe", "mixtral", "resnet-bk")) == ("rounded_experts" in said)
    assert len(said["learned"]) >= 2 and len(said["rounding"]) == said["formats"][form]["tensors"] - experts
    for entry in said["learned"].values():
        assert len(entry["errors"]) == 4 and entry["learned"] <= min(entry["nearest"], entry["compensated"])
        assert entry["kept"].endswith("step") or entry["learned"] == entry[entry["kept"]]


def test_the_chosen_mix_of_a_budget_is_learned_and_what_is_behind_the_layers_compensated(case, tmp_path):  # noqa: F811
    said = case.run(tmp_path / "out", policy="static", tag="mlp int4-g32", rule="model.lm_head int8", **LEARNED)
    weighs_as_said(said, tmp_path / "out")
    assert list(said["learned"]) == ["layers.0", "layers.1"] and "lm_head" in said["rounding"]


WAYS = {"learned": {"rounding-steps": 40}, "compensated": {"calibration-rows": 24}}


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(case, tmp_path, way):  # noqa: F811
    keys = {"policy": "static", "tag": "mlp int4-g32", "rule": "model.lm_head int8", "rounding": way} | WAYS[way]
    case.run(tmp_path / "whole", limbeck=Limbeck(threads=1), **keys)
    out = tmp_path / "out"
    work, flags, finished = Path(f"{out}.rounding"), case.flags(out, **keys), 0
    for stage in (None, 0, 1):  # as soon as the folder is there, then behind a stage
        awaited = work / ("rounding.json" if stage is None else f"stage-{stage:05}.safetensors")
        run = subprocess.Popen([build_folder() / "bin" / "limbeck", *flags, "--quiet"], stdin=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not os.path.exists(awaited) and run.poll() is None and time.monotonic() < until:
            pass
        run.kill()
        run.wait()
        assert (work / "rounding.json").exists() and not out.exists()
        finished = len(list(work.glob("stage-*.safetensors")))
    assert 0 < finished < 4
    run = subprocess.run([build_folder() / "bin" / "limbeck", *flags, "--threads=2"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert f"{work}: goes on " + ("behind all 3 stages" if finished == 3 else f"at stage {finished + 1} of 3") in run.stderr
    ours, theirs = ((folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "whole"))
    assert ours == theirs and not work.exists()
    said, whole = (scores.json.loads(Path(f"{folder}.json").read_text())["result"] for folder in (out, tmp_path / "whole"))
    assert said["rounding"] == whole["rounding"] and said.get("learned") == whole.get("learned")


@pytest.fixture
def begun(case, tmp_path):  # noqa: F811
    """What a run leaves that was killed behind its first layer."""
    out = tmp_path / "begun"
    first = Path(f"{out}.rounding") / "stage-00000.safetensors"
    run = subprocess.Popen([build_folder() / "bin" / "limbeck", *case.flags(out, quantize="int8", **LEARNED | {"rounding-steps": 200}), "--quiet"], stdin=subprocess.DEVNULL)
    while not first.exists() and run.poll() is None:
        pass
    run.kill()
    run.wait()
    assert first.exists()
    return out


def test_what_was_kept_of_another_run_or_is_damaged_is_refused(case, begun):  # noqa: F811
    own = {"quantize": "int8"} | LEARNED | {"rounding-steps": 200}
    for keys, what in (({"rounding-steps": 20}, "other steps"), ({"quantize": "int4-g32"}, "other formats"), ({"calibration-rows": 5}, "other calibration rows"),
                       ({"rounding": "compensated", "rounding-steps": None}, "other rounding"), ({"dtype": "float16"}, "other scales")):  # fmt: skip
        with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*begun.rounding: holds what was rounded of {what}, wanted that of this run"):
            Limbeck().run(*case.flags(begun, **own | keys))
    first = Path(f"{begun}.rounding") / "stage-00000.safetensors"
    data = bytearray(first.read_bytes())
    data[-100] ^= 4
    first.write_bytes(data)
    with pytest.raises(LimbeckError, match="(?s)exit 3: .*stage-00000.safetensors: is damaged: its checksum is another: remove it"):
        Limbeck().run(*case.flags(begun, **own))
    first.unlink()  # nothing is finished: any run may begin there
    case.run(begun, quantize="int8", rounding="compensated")
    work = Path(f"{begun}.rounding")
    work.mkdir()
    (work / "thesis.txt").write_text("mine")
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*begun.rounding: holds thesis.txt, wanted a folder for what is rounded so far alone"):
        Limbeck().run(*case.flags(begun, **own))
    assert (work / "thesis.txt").read_text() == "mine"


def test_without_data_or_for_another_rounding_it_is_refused(case, tmp_path):  # noqa: F811
    for keys, message in (({"data": None}, "--rounding=learned goes by the inputs of each module"), ({"rounding": "compensated"}, "--rounding-steps says how long --rounding=learned learns")):
        with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*{message}"):
            Limbeck().run(*case.flags(tmp_path / "out", quantize="int8", **LEARNED | keys))
