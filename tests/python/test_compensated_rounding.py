"""Error-compensated rounding: its operators against GPTQ as its paper has it, in float64, code by code; and limbeck quantize
--rounding=compensated against a model that is rounded module by module in float64."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import test_quantize_scores as scores
import token_rows
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError, build_folder
from safetensors.torch import load_file
from test_compressed_tensors import IDS
from test_quantize_policies import formats, weighs_as_said
from test_quantize_scores import case  # noqa: F401
from test_quantized_models import OUTPUT_BAR
from test_quantized_ops import FORMATS, INT8, SHORT, bits_of, dequantized, ops, weight

NF4 = torch.tensor([-1.0, -0.696192801, -0.525073051, -0.394917488, -0.284441382, -0.18477343, -0.0910500363, 0.0, 0.0795802996, 0.160930201,
                    0.246112302, 0.337915242, 0.440709829, 0.562617004, 0.722956836, 1.0], dtype=torch.float32)  # fmt: skip


def correlated_inputs(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Some directions for all columns, and magnitudes that differ from column to column, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    rank = max(1, columns // 3)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return (draw(rows, rank) @ draw(rank, columns) + 0.3 * draw(rows, columns)) * torch.exp(0.7 * draw(columns))


def moments(x: torch.Tensor) -> torch.Tensor:
    sums = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    ops.add_second_moments(sums, x)
    return sums


def codes_in(words: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    line = (words.long()[..., None] >> torch.arange(32) & 1).flatten(-2)[:, : columns * bits]
    return (line.unflatten(1, (columns, bits)) << torch.arange(bits)).sum(-1)


class Stored:
    """Codes, scales and zeros of a packed matrix, value by value."""

    def __init__(self, parts: list[torch.Tensor], form: str, shape: tuple[int, int]):
        self.form, (rows, columns) = form, shape
        if form in INT8:
            scales = parts[1].view(rows, -1)
            self.codes, self.scale, self.zero = parts[0].long(), scales.repeat_interleave(INT8[form] or columns, 1)[:, :columns], 0
        elif form in SHORT:
            wide, bits = lambda t: t.repeat_interleave(SHORT[form], 1)[:, :columns], bits_of(form)
            self.codes, self.scale, self.last = codes_in(parts[0], columns, bits), wide(parts[1]), 2**bits - 1
            self.zero = 2 ** (bits - 1) if "sym" in form else wide(codes_in(parts[2].T.contiguous(), rows, bits).T)
        else:
            self.codes = torch.stack([parts[0].long() >> 4, parts[0].long() & 15], -1).flatten()[: rows * columns].view(shape)
            ones = [torch.full_like(parts[0], 0xFF), *parts[1:]]  # the code of the level 1
            self.scale, self.zero = dequantized(ones, form, shape), 0

    def nearest(self, column: int, value: torch.Tensor) -> torch.Tensor:
        scale = self.scale[:, column].double()
        if self.form.startswith("nf4"):
            return ((value / scale)[:, None] - NF4.double()).abs().argmin(1)
        if self.form in INT8:
            return torch.round(value / scale).clamp(-127, 127).long()
        return (torch.round(value / scale) + (self.zero if isinstance(self.zero, int) else self.zero[:, column])).clamp(0, self.last).long()

    def value(self, codes: torch.Tensor, column: int | slice) -> torch.Tensor:
        if self.form.startswith("nf4"):
            return (NF4[codes] * self.scale[:, column]).double()
        zero = self.zero if isinstance(self.zero, int) else self.zero[:, column]
        return ((codes - zero).float() * self.scale[:, column]).double()


def textbook(w: torch.Tensor, sums: torch.Tensor, damping: float, stored: Stored) -> torch.Tensor:
    """Codes by the Cholesky factor of the inverse of the damped moments, column by column, in falling order of their diagonal."""
    h = sums.triu() + sums.triu(1).T
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(h[order][:, order])).T
    work, codes = w.double()[:, order].clone(), torch.empty(w.shape, dtype=torch.long)
    for place, column in enumerate(order.tolist()):
        codes[:, column] = stored.nearest(column, work[:, place])
        lost = (work[:, place] - stored.value(codes[:, column], column)) / upper[place, place]
        work[:, place:] -= lost[:, None] * upper[place, place:]
    # A row that is worse so than rounded to nearest keeps that.
    every = slice(None)
    return torch.where((row_errors(w, stored.value(codes, every), h) < row_errors(w, stored.value(stored.codes, every), h))[:, None],
                       codes, stored.codes)  # fmt: skip


def has_few_bits(form: str) -> bool:
    return form in SHORT and bits_of(form) < 4


def by_fitted_scales(w: torch.Tensor, h: torch.Tensor, form: str) -> list[torch.Tensor]:
    """To nearest by that part of each group's range which errs least so; a column counts its damped moment."""
    span, no_offset, share = ops.quantized_range(w, form), torch.zeros_like(w), torch.tensor(1.0)
    chosen, least = span.clone(), torch.full(span.shape[1:], torch.inf, dtype=torch.float64)
    while share > 0.3:
        tried = span * share
        values = dequantized(ops.quantize_learned(w, no_offset, tried, form), form, tuple(w.shape)).double()
        errors = (w.double() - values).square() * h.diagonal()
        groups = torch.stack([group.sum(1) for group in errors.split(SHORT[form], dim=1)], 1).flatten()
        chosen, least = torch.where(groups < least, tried, chosen), torch.minimum(groups, least)
        share = share - 0.05
    return ops.quantize_learned(w, no_offset, chosen, form)


def row_errors(w: torch.Tensor, q: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    error = w.double() - q.double()
    return ((error @ h) * error).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (700, 129), (33, 64), (40, 200)])
def test_moments_are_sums_of_products(shape, dtype):
    x = correlated_inputs(*shape).to(dtype)
    wanted = x.double().T @ x.double()
    ours = moments(x)
    torch.testing.assert_close(ours.triu(), wanted.triu(), rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))
    # Whatever comes together, the sums run in the order of the rows.
    parts = torch.zeros_like(ours)
    for begin, end in ((0, 1), (1, shape[0] // 3 + 1), (shape[0] // 3 + 1, shape[0])):
        ops.add_second_moments(parts, x[begin:end])
    assert torch.equal(parts, ours)


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
@pytest.mark.parametrize("shape", [(300, 130), (5, 77), (17, 320)])
def test_codes_are_those_of_the_textbook(shape, form):
    w, sums = weight(shape), moments(correlated_inputs(96, shape[1]))
    feedback, pivots, order, damping = ops.compensation_of(sums)
    assert damping == 0.01
    parts, nearest, compensated = ops.quantize_compensated(w, feedback, pivots, order, form)
    plain = ops.quantize_weight(w, form)
    h = sums.triu() + sums.triu(1).T
    damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    every, stored, ours = slice(None), Stored(plain, form, shape), Stored(parts, form, shape)
    assert torch.equal(stored.value(stored.codes, every), dequantized(plain, form, shape).double())
    wanted = textbook(w, sums, damping, stored)
    if has_few_bits(form):  # a row has the scales by which it errs less
        fitted = Stored(by_fitted_scales(w, damped, form), form, shape)
        by_fitted = textbook(w, sums, damping, fitted)
        errors = [row_errors(w, of.value(codes, every), damped) for of, codes in ((stored, wanted), (fitted, by_fitted))]
        better = (errors[1] < errors[0])[:, None]
        assert better.any()
        wanted = torch.where(better, by_fitted, wanted)
        assert torch.equal(ours.scale, torch.where(better, fitted.scale, stored.scale))
        assert "sym" in form or torch.equal(ours.zero, torch.where(better, fitted.zero, stored.zero))
    else:
        assert all(torch.equal(one, other) for one, other in zip(parts[1:], plain[1:], strict=True))  # scales and zeros are kept
    assert torch.equal(ours.codes, wanted) and not torch.equal(ours.codes, stored.codes)
    # Both errors are what they are called, and the compensated one is below, of each row and without damping too.
    found, before = dequantized(parts, form, shape), dequantized(plain, form, shape)
    assert nearest == pytest.approx(float(row_errors(w, before, damped).sum()), rel=1e-9)
    assert compensated == pytest.approx(float(row_errors(w, found, damped).sum()), rel=1e-9)
    assert (row_errors(w, found, damped) <= row_errors(w, before, damped) * (1 + 1e-9)).all()
    assert compensated < 0.8 * nearest
    assert row_errors(w, found, h).sum() < row_errors(w, before, h).sum()


@pytest.mark.parametrize("form", [*FORMATS, "int8-g64"])
def test_inputs_without_correlation_leave_rounding_to_nearest(form):
    w, sums = weight((37, 333)), torch.diag(torch.linspace(3, 1, 333, dtype=torch.float64))
    parts, nearest, compensated = ops.quantize_compensated(w, *ops.compensation_of(sums)[:3], form)
    found, plain = (dequantized(of, form, w.shape).double() for of in (parts, ops.quantize_weight(w, form)))
    # Float32 and float64 break ties otherwise: of int4-sym the largest values lie between two codes. Codes of nf4-double are
    # chosen, as bitsandbytes has it, before its scales are rounded.
    assert compensated <= nearest
    if has_few_bits(form):
        return  # by other scales
    assert ((w - found).abs() <= (w - plain).abs() * (1 + 1e-6)).all()
    assert (found == plain).double().mean() > (0.8 if form == "nf4-double" else 0.99)


def test_a_column_that_is_always_zero_and_a_row_of_zeros_stay(shape=(9, 70)):
    x, w = correlated_inputs(50, 70), weight(shape)
    x[:, 3] = 0
    w[4] = 0
    compensation = ops.compensation_of(moments(x))[:3]
    for form in FORMATS:
        parts, _, _ = ops.quantize_compensated(w, *compensation, form)
        found, plain = dequantized(parts, form, shape), dequantized(ops.quantize_weight(w, form), form, shape)
        assert torch.equal(found[4], plain[4]) or form == "nf4-double"
        if (form in SHORT or form == "int8") and not has_few_bits(form):
            assert torch.equal(found[:, 3], plain[:, 3])


@pytest.mark.parametrize("form", ["int8", "int4", "int2", "nf4"])
def test_the_same_bits_on_one_thread_and_on_two(form):
    w, x, found = weight((100, 330)), correlated_inputs(600, 330), []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        sums = moments(x)
        compensation = ops.compensation_of(sums)
        found.append([sums, *compensation[:3], *ops.quantize_compensated(w, *compensation[:3], form)[0]])
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))


def test_moments_that_are_not_positive_get_more_damping_or_are_refused():
    nearly = torch.tensor([[1.0, 1.05], [0, 1.0]], dtype=torch.float64)
    assert ops.compensation_of(nearly)[3] == pytest.approx(0.1)
    for sums, message in ((torch.tensor([[1.0, 1e3], [0, 1.0]], dtype=torch.float64), "are no second moments"),
                          (torch.zeros(2, 2, dtype=torch.float64), "those of no inputs"),
                          (torch.full((2, 2), torch.nan, dtype=torch.float64), "not finite"),
                          (torch.eye(2), "wanted float64"), (torch.ones(2, 3, dtype=torch.float64), "wanted float64")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.compensation_of(sums)
    with pytest.raises(RuntimeError, match=r"x is float32 \[4, 3\] on cpu, wanted"):
        ops.add_second_moments(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(4, 3))
    with pytest.raises(RuntimeError, match="wanted what compensation_of"):
        ops.quantize_compensated(torch.ones(4, 3), *ops.compensation_of(nearly)[:3], "int8")


ORDER = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def inputs_of(net, name: str, rows: list[torch.Tensor]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = scores.linears(net)[name].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        for ids in rows:
            net(ids)
    hook.remove()
    return torch.cat(seen)


def rounded_in_float64(case, form: str) -> dict[str, torch.Tensor]:
    """By module its codes: each by its inputs when all modules before it are what their codes stand for."""
    net, rows, codes = scores.model(case.base), scores.rows_of(case, 0, scores.ROWS), {}
    for layer in range(2):
        for together in ORDER:
            names = [next(name for name in scores.linears(net) if f"layers.{layer}." in name and name.endswith(part)) for part in together]
            x = inputs_of(net, names[0], rows)
            for name in names:
                module = scores.linears(net)[name]
                w = module.weight.detach().float()
                stored = Stored(ops.quantize_weight(w, form, torch.float16), form, w.shape)
                stored.scale = stored.scale.float()
                codes[name] = textbook(w, (x.T @ x).triu(), 0.01, stored)
                module.weight.data = stored.value(codes[name], slice(None))
    return codes


@pytest.mark.parametrize("form", ["int4-sym-g32", "int8"])
def test_a_model_is_rounded_in_the_order_of_its_forward(case, tmp_path, form):  # noqa: F811
    flags = {"quantize": form, "rounding": "compensated", "dtype": "float16"}
    said = case.run(tmp_path / "out", limbeck=Limbeck(threads=2), **flags)
    plain = case.run(tmp_path / "plain", quantize=form, dtype="float16")
    assert said["bytes"] == plain["bytes"] and "rounding" not in plain
    modules = said["rounding"]
    wanted = rounded_in_float64(case, form)
    place = {part: i for i, together in enumerate(ORDER) for part in together}
    assert modules.keys() == wanted.keys()
    assert list(modules) == sorted(modules, key=lambda name: (name.split(".")[1], place[name.split(".")[-1]]))  # a stable sort
    tokens = sum(len(ids) for ids in case.documents[: scores.ROWS])
    assert all(entry["tokens"] == tokens and entry["damping"] == 0.01 and entry["compensated"] < entry["nearest"] for entry in modules.values())
    stored, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    bits, offset = (4, 8) if form.startswith("int4") else (8, 0)
    same = total = 0
    for name, codes in wanted.items():
        for part in ("weight_scale", "weight_shape"):
            assert torch.equal(stored[f"model.{name}.{part}"], before[f"model.{name}.{part}"])
        ours = scores.unpacked(stored[f"model.{name}.weight_packed"], bits)[:, : codes.shape[1]]
        same, total = same + int((ours == codes - offset).sum()), total + codes.numel()
    # Inputs are float32 in one and float64 in the other: a code may fall on the other side of a boundary, and move those
    # behind it in its row.
    print(f"{total - same} of {total} codes differ")
    assert same > 0.998 * total
    # On one thread, and again: the same bits.
    case.run(tmp_path / "again", limbeck=Limbeck(threads=1), **flags)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(stored[name], again[name]) for name in stored)


@pytest.mark.parametrize("form", ["int4-g64", "nf4-double"])
def test_others_load_what_was_rounded(case, tmp_path, form):  # noqa: F811
    said = case.run(tmp_path / "out", quantize=form, rounding="compensated", dtype="float32")
    assert all(entry["compensated"] < entry["nearest"] for entry in said["rounding"].values())
    theirs = parity_measures.in_its_own_dtype(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu", dtype=torch.float32))
    with torch.no_grad():
        wanted = theirs(**IDS, use_cache=False).logits
    assert parity_measures.largest_error(Limbeck().forward(tmp_path / "out", IDS)["logits"], wanted) < OUTPUT_BAR


@pytest.mark.parametrize(("family", "form", "rule"), [
    ("llama3-tied", "int8", "model.embed_tokens int8"), ("gemma2", "int8", None), ("phi3", "int8", "model.lm_head int8"),
    ("qwen3-moe", "int8", None), ("gpt2", "nf4", None)])  # fmt: skip
def test_every_packed_linear_of_a_family_is_rounded(case, tmp_path, family, form, rule):  # noqa: F811
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    data = token_rows.write(tmp_path / "data", token_rows.random_documents(20, 16, 24, model_zoo.VOCABULARY, seed=5), model_zoo.VOCABULARY)
    said = case.run(tmp_path / "out", model=base, data=data, quantize=form, rule=rule, rounding="compensated")
    tables = 1 if rule is not None and "embed" in rule else 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    experts = sum(".experts." in name and name.endswith("_packed") for name in stored)  # which are said by layer
    assert len(said["rounding"]) == said["formats"][form]["tensors"] - tables - experts
    assert len(said.get("rounded_experts", [])) == (json.loads((base / "config.json").read_text())["num_hidden_layers"] if experts else 0)
    assert all(entry["tokens"] > 0 and entry["compensated"] <= entry["nearest"] for entry in said["rounding"].values())
    total = {key: sum(entry[key] for entry in said["rounding"].values()) for key in ("compensated", "nearest")}
    assert total["compensated"] < 0.9 * total["nearest"]


def test_what_no_folder_holds_is_refused_before_anything_is_measured(case, tmp_path):  # noqa: F811
    base = model_zoo.write_model(model_zoo.BY_NAME["qwen3"], tmp_path / "base")
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*limbeck: model.layers.0.[a-z_.]*: 112 columns are no multiple of its groups of 32") as refused:
        Limbeck().run(*case.flags(tmp_path / "out", model=base, quantize="int4-g32", rounding="compensated"))
    assert "rounding: squared error" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_model_without_packed_modules_is_left_alone(case, tmp_path):  # noqa: F811
    said = case.run(tmp_path / "out", budget="2x", exchange_steps=0, rounding="compensated")
    assert set(formats(said).values()) == {"float"} and said["rounding"] == {}


def test_the_chosen_mix_of_a_budget_is_rounded(case, tmp_path):  # noqa: F811
    said = case.run(tmp_path / "out", budget="4x", exchange_steps=2, rounding="compensated")
    weighs_as_said(said, tmp_path / "out")
    given = formats(said)
    assert {name: entry["format"] for name, entry in said["rounding"].items()} == {name: form for name, form in given.items() if form != "float" and not scores.is_table(name)}
    assert 0 < len(said["rounding"]) and set(given.values()) > {"int8"}
    assert all(entry["compensated"] < entry["nearest"] for entry in said["rounding"].values())


def test_killed_while_it_rounds_it_comes_to_the_same_bits(case, tmp_path):  # noqa: F811
    flags = {"policy": "static", "tag": "mlp int4-g32", "rounding": "compensated", "rule": "model.lm_head int8"}
    run = subprocess.Popen([build_folder() / "bin" / "limbeck", *case.flags(tmp_path / "out", **flags)], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    heard = next((line for line in run.stderr if line.startswith("rounding 15 modules of 3 stages by 6 calibration rows")), None)
    run.kill()
    run.wait()
    run.stderr.close()
    assert heard is not None and not (tmp_path / "out").exists()
    said = case.run(tmp_path / "out", **flags)
    case.run(tmp_path / "whole", limbeck=Limbeck(threads=1), **flags)
    assert list(said["rounding"])[-1] == "lm_head" and said["rounding"]["lm_head"]["format"] == "int8"
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_modules_that_nothing_comes_to_are_named_and_rounded_to_nearest(case, tmp_path):  # noqa: F811
    net = transformers.AutoModelForCausalLM.from_pretrained(case.base)
    with torch.no_grad():
        net.model.layers[1].post_attention_layernorm.weight.zero_()
    net.save_pretrained(tmp_path / "base")
    run = Limbeck(threads=2).run(*case.flags(tmp_path / "out", model=tmp_path / "base", quantize="int4-sym-g32", rounding="compensated"))
    case.run(tmp_path / "plain", model=tmp_path / "base", quantize="int4-sym-g32")
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    for name in scores.linears(net):
        nothing = name.startswith("layers.1.mlp.")
        assert (f"{name}: no calibration token told anything of its inputs: it is rounded to nearest" in run.stderr) == nothing, name
        assert torch.equal(ours[f"model.{name}.weight_packed"], plain[f"model.{name}.weight_packed"]) == nothing, name


def test_without_data_it_is_refused(case, tmp_path):  # noqa: F811
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*--rounding=compensated goes by the inputs of each module"):
        Limbeck().run(*case.flags(tmp_path / "out", quantize="int8", rounding="compensated", data=None))
    assert not Path(tmp_path / "out").exists()
