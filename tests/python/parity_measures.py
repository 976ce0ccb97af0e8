"""Measures of agreement between Limbeck and transformers; the tests hold them to the bars, the table prints them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

import model_zoo
import transformers_reference as reference
from limbeck_runner import Limbeck
from model_zoo import Family, Inputs

HALF_SEEDS = 4
CLASSIFIED = 10  # tokens of a row of which only the class is compared
KEY_BIASES = {".key.bias": ".query.bias", ".k_lin.bias": ".q_lin.bias"}  # of models without rotary embedding


def in_its_own_dtype(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose 4-bit modules multiply in the dtype of their inputs: where a processor has AVX512-BF16, bitsandbytes
    multiplies in bfloat16 whatever that is, and is 2e-2 off the weights that it unpacks itself."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def compared(family: Family, inputs: Inputs, tensor: torch.Tensor) -> torch.Tensor:
    """The entries that mean something, in float64.

    Token outputs: real tokens. Classifier rows: those whose first column, which the head reads, is a real token.
    """
    rows = inputs.valid if tensor.dim() == 3 else inputs.valid[:, 0]
    return tensor[rows].double()


def relative_frobenius(candidate: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor | None = None) -> float:
    scale = wanted if scale is None else scale
    return float((candidate.double() - wanted.double()).norm() / scale.double().norm())


def largest_error(candidate: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference in units of the largest wanted value."""
    return float((candidate.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def gradient_scale(name: str, wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an error in this gradient is measured against: the gradient itself, with one exception.

    Without rotary embedding a key bias adds the same amount to all scores of a query, which softmax ignores: its exact
    gradient is zero and what is computed is rounding. It is measured against the query bias of the same layer.
    """
    for key, query in KEY_BIASES.items():
        if name.endswith(key):
            return wanted[name.removesuffix(key) + query]
    return wanted[name]


def gradient_errors(candidate: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative Frobenius error by checkpoint name. A name that only one side has is an error of its own."""
    names = {name for name in wanted if name.startswith("grad.")}
    extra = {n for n in candidate if n.startswith("grad.") and n not in names and bool(candidate[n].any())}
    missing = names - candidate.keys()
    if missing or extra:
        raise AssertionError(f"gradients missing: {sorted(missing)}; not in transformers' checkpoint: {sorted(extra)}")
    errors = {}
    for name in sorted(names):
        if candidate[name].shape != wanted[name].shape:
            raise AssertionError(f"{name}: shape {tuple(candidate[name].shape)}, wanted {tuple(wanted[name].shape)}")
        scale = gradient_scale(name, wanted)
        if not scale.any():  # an expert without a token
            errors[name.removeprefix("grad.")] = float(candidate[name].double().norm())
            continue
        errors[name.removeprefix("grad.")] = relative_frobenius(candidate[name], wanted[name], scale)
    return errors


def demand_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Padded positions may hold anything, but not NaN or infinity: 0 * NaN would enter the gradients."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise AssertionError(f"not finite: {bad}")


@dataclass(frozen=True)
class Float32Parity:
    """`own_*`: transformers' float32 run against its float64 run, the noise that any comparison has."""

    output: float
    hidden: dict[str, float]
    gradients: dict[str, float]
    token_loss: float
    mean_loss: float
    own_output: float
    own_gradients: dict[str, float]

    @property
    def worst_gradient(self) -> tuple[str, float]:
        return max(self.gradients.items(), key=lambda item: item[1])

    @property
    def worst_hidden(self) -> float:
        return max(self.hidden.values())


def _output_shape(family: Family, inputs: Inputs, model) -> tuple[int, ...]:
    batch, length = inputs.tensors["input_ids"].shape
    if family.kind == "classifier":
        return (batch, model.config.num_labels)
    return (batch, length, model.config.vocab_size if family.kind in ("decoder", "masked") else model.config.hidden_size)


def _cotangent(family: Family, inputs: Inputs, model, seed: int) -> torch.Tensor:
    cotangent = model_zoo.make_cotangent(inputs, _output_shape(family, inputs, model), seed=seed)
    if family.kind == "classifier":
        cotangent = cotangent * inputs.valid[:, :1]
    return cotangent


@lru_cache(maxsize=None)
def float32_parity(family: Family) -> Float32Parity:
    with tempfile.TemporaryDirectory() as folder:
        path = model_zoo.write_model(family, Path(folder))
        inputs = model_zoo.make_inputs(family)
        model = model_zoo.load(family, path, torch.float32)
        exact = model_zoo.load(family, path, torch.float64)
        request = {"cotangent": _cotangent(family, inputs, model, 0), "hidden": True}
        sent = {**inputs.tensors, "output_gradient": request["cotangent"]}
        if family.kind != "encoder":
            request["labels"] = sent["labels"] = model_zoo.make_labels(family, inputs)
        wanted = reference.forward(model, family, inputs, **request)
        truth = reference.forward(exact, family, inputs, **request)
        got = Limbeck().forward(path, sent, hidden=True, gradients=True)
    return _compare_float32(family, inputs, got, wanted, truth, request.get("labels"))


def _compare_float32(family, inputs, got, wanted, truth, labels) -> Float32Parity:
    demand_finite(got)

    def pick(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return compared(family, inputs, tensors[name])

    token_loss = mean_loss = 0.0
    if labels is not None:
        entries = wanted["token_loss"].shape[-1]  # [B,T] with an unused last column is as good as [B,T-1]
        counted = inputs.valid[:, 0] if family.kind == "classifier" else labels[:, labels.shape[1] - entries :] != -100
        losses, expected = got["token_loss"][..., :entries][counted], wanted["token_loss"][counted]
        token_loss = largest_error(losses, expected)
        # transformers' mean covers every row; a classifier row that reads padding is left out of ours.
        mean = expected.mean() if family.kind == "classifier" else wanted["loss"]
        mean_loss = abs(float(losses.double().mean() - mean.double())) / abs(float(mean))
    states = [name for name in wanted if name.startswith("hidden.")]
    return Float32Parity(
        output=largest_error(pick(got, family.output), pick(wanted, family.output)),
        hidden={name: largest_error(pick(got, name), pick(wanted, name)) for name in states},
        gradients=gradient_errors(got, wanted),
        token_loss=token_loss,
        mean_loss=mean_loss,
        own_output=largest_error(pick(wanted, family.output), pick(truth, family.output)),
        own_gradients=gradient_errors(wanted, truth),
    )


def routing_margins(model, ids: torch.Tensor) -> torch.Tensor:
    """[B,T]: the smallest gap, over the layers, between the logits of the last chosen and the first rejected expert."""
    gaps = []

    def record(module, _, output):
        ordered = output[0].view(*ids.shape, -1).sort(dim=-1, descending=True).values
        gaps.append(ordered[..., module.top_k - 1] - ordered[..., module.top_k])

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate") and hasattr(module, "top_k")]
    handles = [router.register_forward_hook(record) for router in routers]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(gaps).amin(0)


@lru_cache(maxsize=None)
def clearly_routed_inputs(family: Family, seed: int) -> Inputs:
    with tempfile.TemporaryDirectory() as folder:
        model = model_zoo.load(family, model_zoo.write_model(family, Path(folder), seed=seed), torch.float32)
    return inputs_clearly_routed_by(model, family, seed)


def inputs_clearly_routed_by(model, family: Family, seed: int, length: int = 14, gap: float = 0.4) -> Inputs:
    """Padded inputs of which every token chooses its experts by a margin that half precision cannot upset.

    Which experts a token uses is a step function: where two experts nearly tie, float64 takes one and any half
    precision run may take the other, and the error is then that of the coin and not of the arithmetic. Tokens are
    drawn one position after the other (attention is causal) until the margin is wide in every layer: `gap` is some six
    times the error that router logits have in bfloat16.
    """
    inputs = model_zoo.make_inputs(family, seed=seed, length=length)
    generator = torch.Generator().manual_seed(32452843 * seed + 11)
    rows = inputs.valid.shape[0]
    tokens = torch.empty(rows, 0, dtype=torch.int64)
    for _ in range(length):  # every row is drawn at full length; padding then takes the place of what it needs
        tokens = torch.cat([tokens, _clear_column(model, tokens, gap, generator)], dim=1)
    for row, valid in enumerate(inputs.valid):
        inputs.tensors["input_ids"][row, valid] = tokens[row, : int(valid.sum())]
    return inputs


def _clear_column(model, tokens: torch.Tensor, gap: float, generator: torch.Generator, tries: int = 12) -> torch.Tensor:
    rows = tokens.shape[0]
    chosen = torch.zeros(rows, 1, dtype=torch.int64)
    open_rows = list(range(rows))
    for _ in range(40):
        drawn = torch.randint(model_zoo.FIRST_TOKEN, model_zoo.VOCABULARY, (len(open_rows), tries, 1), generator=generator)
        before = tokens[open_rows][:, None].expand(-1, tries, -1)
        margins = routing_margins(model, torch.cat([before, drawn], dim=2).flatten(0, 1))[:, -1].view(-1, tries)
        still_open = []
        for row, candidates, margin in zip(open_rows, drawn[..., 0], margins, strict=True):
            good = (margin >= gap).nonzero()
            if len(good):
                chosen[row, 0] = candidates[good[0, 0]]
            else:
                still_open.append(row)
        open_rows = still_open
        if not open_rows:
            return chosen
    raise AssertionError(f"no token with a routing margin of {gap} after 40 draws")


@lru_cache(maxsize=None)
def clearly_rectified_inputs(family: Family, seed: int, rows: int = 48, gap: float = 0.05) -> Inputs:
    """Rows of which every unit before DistilBERT's ReLU is clear of zero, where its derivative jumps.

    The same reason as with routing: a unit on the other side of zero changes a gradient by its full size. The error of
    these units in bfloat16 is about a quarter of `gap`.
    """
    drawn = model_zoo.make_inputs(family, seed=seed, batch=2400, length=CLASSIFIED)
    units, clear = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = model_zoo.load(family, model_zoo.write_model(family, Path(folder), seed=seed), torch.float32)
    model.pre_classifier.register_forward_hook(lambda _module, _input, output: units.append(output))
    for begin in range(0, 2400, 240):  # a third is enough
        with torch.no_grad():
            model(**{name: tensor[begin : begin + 240] for name, tensor in drawn.tensors.items()})
        clear += (begin + (units[-1].abs().amin(dim=1) >= gap * units[0].std()).nonzero()[:, 0]).tolist()
        if len(clear) >= rows:
            return Inputs({name: tensor[clear[:rows]].contiguous() for name, tensor in drawn.tensors.items()})
    raise AssertionError(f"{family.name}: {len(clear)} of {rows} rows are clear of the kink")


@dataclass(frozen=True)
class HalfParity:
    """Geometric mean of relative Frobenius errors against the float64 run of the same rounded weights, over many models."""

    output: float
    own_output: float
    gradients: float
    own_gradients: float

    @property
    def ratio(self) -> float:
        return self.output / self.own_output

    @property
    def gradient_ratio(self) -> float:
        return self.gradients / self.own_gradients


def _half_inputs(family: Family, seed: int) -> Inputs:
    if family.experts:
        return clearly_routed_inputs(family, seed)
    if family.model_class == "DistilBertForSequenceClassification":
        return clearly_rectified_inputs(family, seed)
    if family.kind == "classifier":  # a row gives only five numbers: take many rows
        return model_zoo.make_inputs(family, seed=seed, batch=48, length=CLASSIFIED)
    return model_zoo.make_inputs(family, seed=seed)


def _geometric_mean(errors: dict[str, float]) -> float:
    """Over all parameters but key biases whose exact gradient is zero: of those nothing but rounding is computed.

    Geometric, because a root mean square is the error of the one or two worst-conditioned parameters, and its ratio
    between two equally good roundings scattered from 0.73 to 1.47 over eight BERT models.
    """
    values = [error for name, error in errors.items() if not name.endswith(tuple(KEY_BIASES))]
    return float(torch.tensor(values, dtype=torch.float64).clamp_min(1e-12).log().mean().exp())


def half_seeds(family: Family) -> int:
    """Five numbers a row make a classifier's ratio scatter by 12 % a model (27 models): it takes more of them."""
    return 16 if family.kind == "classifier" else HALF_SEEDS


@lru_cache(maxsize=None)
def half_parity(family: Family, dtype: torch.dtype) -> HalfParity:
    seeds = half_seeds(family)
    logs = sum(torch.tensor(half_errors(family, dtype, seed), dtype=torch.float64).log() for seed in range(seeds))
    return HalfParity(*(logs / seeds).exp().tolist())


def half_errors(family: Family, dtype: torch.dtype, seed: int) -> list[float]:
    """Of one model, in the order of HalfParity."""
    with tempfile.TemporaryDirectory() as folder:
        path = model_zoo.write_model(family, Path(folder), seed=seed, dtype=dtype)
        exact = model_zoo.load(family, path, torch.float64)
        model = model_zoo.load(family, path, dtype)
        inputs = _half_inputs(family, seed)
        # Rounded beforehand, so that all three runs start their backward pass from the same numbers.
        cotangent = _cotangent(family, inputs, model, seed).to(dtype).float()
        truth = reference.forward(exact, family, inputs, cotangent=cotangent)
        own = reference.forward(model, family, inputs, cotangent=cotangent)
        got = Limbeck().forward(path, {**inputs.tensors, "output_gradient": cotangent}, dtype=dtype, gradients=True)
    demand_finite(got)
    if got[family.output].dtype != dtype:
        raise AssertionError(f"{family.output} is {got[family.output].dtype}, wanted the run's {dtype}")
    wanted = compared(family, inputs, truth[family.output])
    return [
        relative_frobenius(compared(family, inputs, got[family.output]), wanted),
        relative_frobenius(compared(family, inputs, own[family.output]), wanted),
        _geometric_mean(gradient_errors(got, truth)),
        _geometric_mean(gradient_errors(own, truth)),
    ]
