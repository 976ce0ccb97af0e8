"""Codes that are trained: the operators against packing and unpacking, runs against a straight-through loop in PyTorch, and
folders against what the run saw."""

from __future__ import annotations

import copy
import json
import re
import shutil
from typing import Callable

import model_zoo
import pytest
import torch
import torch_distiller
import transformers
from limbeck_runner import Limbeck
from rank_processes import Ranks
from safetensors.torch import load_file
from test_quantized_models import by_matrix
from test_quantized_ops import FORMATS, dequantized, ops, weight
from test_resnet_bk import resnet_bk
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Run, Work, checkpoints, joined_state, newest_checkpoint, refused_before_anything_runs, saved

import token_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODES = {"student__train_codes": "true"}


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("codes"), limbeck)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_seen_is_what_unpacking_gives_and_the_gradient_is_the_floats(form, dtype):
    for shape in ((37, 130), (8, 64), (1, 3)):
        w = weight(shape, dtype=dtype).requires_grad_()
        scales = torch.float32 if form.startswith("nf4") else dtype
        seen = ops.seen_through_format(w, form, scales)
        wanted = dequantized(ops.quantize_weight(w.detach(), form, scales), form, shape)
        assert seen.dtype == dtype and torch.equal(seen, wanted.to(dtype))
        cotangent = drawn(*shape, dtype=dtype)
        seen.backward(cotangent)
        assert torch.equal(w.grad, cotangent)


def assert_gradient_of_product(got: torch.Tensor, cotangent: torch.Tensor, rows: torch.Tensor) -> None:
    """Of the weight of a linear module, with one rounding of a sum in float32."""
    exact = cotangent.double().T @ rows.double()
    bar = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[got.dtype]
    assert (got.double() - exact).abs().max() <= bar * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_linear_that_is_seen_through_codes_is_the_product_with_those_codes(form, dtype):
    """Few rows and many: bits and gradients of what is frozen, and of the weight the product of a linear module."""
    shape = (40, 96)
    for rows, with_bias in ((3, True), (50, False)):
        w, x = weight(shape, dtype=dtype).requires_grad_(), drawn(2, rows, shape[1], dtype=dtype).requires_grad_()
        bias = drawn(shape[0], dtype=dtype, seed=8).requires_grad_() if with_bias else None
        parts = ops.quantize_weight(w.detach(), form, dtype)
        frozen = [None if t is None else t.detach().clone().requires_grad_() for t in (x, bias)]
        wanted = ops.quantized_linear(frozen[0], parts, form, *shape, frozen[1])
        y = ops.straight_through_linear(x, w, form, bias, dtype)
        with torch.no_grad():
            assert torch.equal(ops.straight_through_linear(x, w, form, bias, dtype), y)
        cotangent = drawn(*y.shape, dtype=dtype, seed=9)
        y.backward(cotangent)
        wanted.backward(cotangent)
        assert torch.equal(y, wanted) and torch.equal(x.grad, frozen[0].grad)
        assert bias is None or torch.equal(bias.grad, frozen[1].grad)
        assert_gradient_of_product(w.grad, cotangent.flatten(0, 1), x.detach().flatten(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_groups_that_are_seen_through_codes_are_the_products_with_those_codes(form, dtype):
    """One group has no rows: its weight has no gradient but zeros."""
    shape, ends = (24, 96), torch.tensor([5, 5, 23], dtype=torch.int32)
    w = torch.stack([weight(shape, seed=seed, dtype=dtype) for seed in range(3)]).requires_grad_()
    rows = drawn(23, shape[1], dtype=dtype).requires_grad_()
    parts = [torch.stack(part) for part in zip(*(ops.quantize_weight(one, form, dtype) for one in w.detach()), strict=True)]
    frozen = rows.detach().clone().requires_grad_()
    wanted = ops.grouped_quantized_linear(frozen, parts, form, *shape, ends)
    y = ops.straight_through_grouped(rows, w, ends, form, dtype)
    with torch.no_grad():
        assert torch.equal(ops.straight_through_grouped(rows, w, ends, form, dtype), y)
    cotangent = drawn(*y.shape, dtype=dtype, seed=9)
    y.backward(cotangent)
    wanted.backward(cotangent)
    assert torch.equal(y, wanted) and torch.equal(rows.grad, frozen.grad)
    for group, (begin, end) in enumerate(((0, 5), (5, 5), (5, 23))):
        assert_gradient_of_product(w.grad[group], cotangent[begin:end], rows.detach()[begin:end])


def test_meta_has_the_shapes_and_what_does_not_fit_is_refused():
    w = torch.empty(8, 64, device="meta", dtype=torch.bfloat16)
    assert ops.seen_through_format(w, "nf4", torch.float32).shape == (8, 64)
    y = ops.straight_through_linear(torch.empty(2, 3, 64, device="meta", dtype=torch.bfloat16), w, "int4-g32", None, torch.bfloat16)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 8), torch.bfloat16, "meta")
    stack, ends = torch.empty(3, 8, 64, device="meta"), torch.empty(3, device="meta", dtype=torch.int32)
    assert ops.straight_through_grouped(torch.empty(5, 64, device="meta"), stack, ends, "nf4", torch.float32).shape == (5, 8)
    broken = drawn(8, 64)
    broken[3, 5] = float("nan")
    for x, own, message in ((drawn(2, 64).double(), drawn(8, 64), "weight is float32"), (drawn(2, 63), drawn(8, 64), "wanted .* for a weight"),
                            (drawn(2, 64), broken, "row 3 .* holds NaN")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            ops.straight_through_linear(x, own, "int8", None, torch.float32)


class ThroughCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, form):
        return dequantized(ops.quantize_weight(w, form, torch.float32), form, w.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Seen(torch.nn.Module):
    def __init__(self, name: str, form: str):
        super().__init__()
        self.name, self.form = name, form

    def forward(self, w):
        return by_matrix(self.name, w, lambda matrix: ThroughCodes.apply(matrix, self.form))


def seen_through(model: torch.nn.Module, form: str, head: str | None = None, embedding: str | None = None) -> torch.nn.Module:
    kinds = {"lm_head": head, "embed_tokens": embedding}
    for name, module in list(model.named_modules()):
        kind = form if name.endswith("_proj") and ".bk." not in name else kinds.get(name.rpartition(".")[2])
        if kind:
            torch.nn.utils.parametrize.register_parametrization(module, "weight", Seen("weight", kind))
        for stack, weight in list(module.named_parameters(recurse=False)) if name.endswith(".experts") else []:
            if weight.dim() == 3:
                torch.nn.utils.parametrize.register_parametrization(module, stack, Seen(stack, form))
    return model


@pytest.fixture(scope="module")
def tied(work) -> transformers.PreTrainedModel:
    """The student with its embedding's table as its head."""
    model = copy.deepcopy(work.student)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    saved(model, work.folder / "tied")
    return model


def table_rules(head: str | None, embedding: str | None) -> str | None:
    rules = [f"student.{name} {kind}" for name, kind in (("lm_head", head), ("embed_tokens", embedding)) if kind]
    return "\nrule = ".join(rules) or None


@pytest.mark.parametrize(("form", "head", "embedding", "is_tied"),
                         [("int4-g32", "int8", None, False), ("int8", None, None, False), ("nf4", None, None, False), ("int8", None, "int8", False),
                          ("int4-g32", "int8", "int8", True)])  # fmt: skip
def test_a_run_is_a_straight_through_loop_in_pytorch(work, tied, form, head, embedding, is_tied):
    """Not in int4-sym: the least value of a group lies halfway between two codes there, and the last bit decides."""
    steps, batches = 20, token_rows.padded_batches(work.documents, ROWS, LENGTH)
    updates = [[batches[i % len(batches)]] for i in range(steps)]
    settings = torch_distiller.Settings(learning_rate=1e-3, total_steps=steps, warmup_steps=5, weight_decay=0.01, temperature=2.0)
    keys = CODES | {"student__quantize": form, "precision__rule": table_rules(None if is_tied else head, embedding),
                    "student__model": work.folder / ("tied" if is_tied else "student"), "train__steps": f"{steps} steps", "checkpoint__every": 1, "checkpoint__keep": steps}  # fmt: skip
    start = tied if is_tied else work.student
    run = equal_to_pytorch(work, f"{form}-{head}-{embedding}-{is_tied}", start, lambda model: seen_through(model, form, head, embedding), updates, settings, keys)
    assert run.series("loss")[-1] < run.series("loss")[0]


def by_own_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by our names; those of experts that are modules of their own stacked."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        name = re.sub(r"parametrizations\.(\w+)\.original", r"\1", name).removeprefix("model.")
        own = re.sub(r"\.experts\.\d+\.(\w+)\.", r".experts.\1.", name)
        own = own if own == name else own.removesuffix(".weight").replace(".bias", "_bias")
        found.setdefault(own, []).append(parameter.grad)
    return {name: torch.stack(gradients) if len(gradients) > 1 else gradients[0] for name, gradients in found.items()}


def equal_to_pytorch(work: Work, name: str, start: torch.nn.Module, see: Callable, updates: list, settings: torch_distiller.Settings, keys: dict) -> Run:
    run = work.train(f"parity-{name}", **keys)
    # The gradients of the first update are what the first moments are made of.
    first = see(copy.deepcopy(start))
    torch_distiller.distil(first, work.teacher, updates[:1], settings)
    state, gradients = joined_state(checkpoints(run.folder)[0]), by_own_name(first)
    assert {key.removeprefix("optim first_moment.student.") for key in state if key.startswith("optim first_moment.")} == gradients.keys()
    for own, gradient in gradients.items():
        ours, wanted = state[f"optim first_moment.student.{own}"] / (1 - settings.betas[0]), gradient.flatten()
        assert (ours - wanted).norm() <= 1e-4 * wanted.norm(), (own, float((ours - wanted).norm() / wanted.norm()))
    wanted = torch_distiller.distil(see(copy.deepcopy(start)), work.teacher, updates, settings)
    for what, series in (("loss", wanted.loss), ("kd", wanted.kd), ("ce", wanted.ce)):
        worst = max(abs(a - b) / abs(b) for a, b in zip(run.series(what), series, strict=True))
        print(f"{name}, {what}: worst relative difference {worst:.2e}")
        assert worst < 1e-4, (what, worst)
    return run


SPARSE = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts_per_tok=2,
              initializer_range=0.15, tie_word_embeddings=False, max_position_embeddings=64, attn_implementation="eager", eos_token_id=2)  # fmt: skip
WITH_EXPERTS = {
    "qwen3-moe": lambda: transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SPARSE, num_experts=4, head_dim=16, moe_intermediate_size=32, norm_topk_prob=True)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SPARSE, num_local_experts=4, intermediate_size=64)),
    "resnet-bk": lambda: resnet_bk(32, 2, seed=2, num_experts=4),
}  # fmt: skip


@pytest.fixture(scope="module")
def sparse(work) -> dict[str, transformers.PreTrainedModel]:
    """By name, students with experts, and their folders."""
    models = {}
    for name, make in WITH_EXPERTS.items():
        torch.manual_seed(4)
        models[name] = make().float()
        if name != "resnet-bk":
            models[name].set_experts_implementation("eager")
        saved(models[name], work.folder / name)
    return models


@pytest.mark.parametrize(("family", "form"), [("qwen3-moe", "int4-g32"), ("mixtral", "int8"), ("resnet-bk", "nf4")])
def test_codes_of_experts_are_trained_as_a_straight_through_loop_in_pytorch_does(work, sparse, family, form):
    """Gate and up are matrices of their own; the router, as ResNet-BK's mixer, stays in floats."""
    steps, batches = 8, token_rows.padded_batches(work.documents, ROWS, LENGTH)
    settings = torch_distiller.Settings(learning_rate=1e-3, total_steps=steps, weight_decay=0.01, temperature=2.0)
    keys = CODES | {"student__quantize": form, "student__model": work.folder / family, "optim__router_learning_rate": 1e-3, "optim__warmup": "0 steps",
                    "train__steps": f"{steps} steps", "checkpoint__every": 1, "checkpoint__keep": steps}  # fmt: skip
    equal_to_pytorch(work, family, sparse[family], lambda model: seen_through(model, form), [[batch] for batch in batches[:steps]], settings, keys)


def evaluated(work: Work, run, *flags) -> dict:
    out = work.folder / "eval.json"
    work.limbeck.run("eval", str(run.recipe), *map(str, flags), "--json", str(out))
    return json.loads(out.read_text())["result"]


SAVED = [("int8", "float32", None, "student"), ("int4-g32", "bfloat16", table_rules("int8", "int8"), "student"),
         ("nf4-double", "float32", None, "student"), ("int3-sym-g32", "bfloat16", table_rules(None, "int8"), "tied"),
         ("int4-sym-g32", "bfloat16", None, "qwen3-moe"), ("int8", "float32", None, "mixtral")]  # fmt: skip


@pytest.mark.parametrize(("form", "dtype", "rule", "start"), SAVED)
def test_the_folder_is_what_quantize_writes_of_the_floats_and_evaluates_as_the_run_did(work, tied, sparse, tmp_path, form, dtype, rule, start):
    keys = CODES | {"student__quantize": form, "student__dtype": dtype, "precision__rule": rule, "student__model": work.folder / start, "teacher__model": None,
                    "teacher__kind": "self", "train__steps": "8 steps", "eval__every": 8}  # fmt: skip
    if start == "tied":  # more ids than rows: the table is rounded whole
        keys["data__batch_size"] = 12
    run = work.train(f"saved-{form}-{start}", **keys)
    result = evaluated(work, run, f"--run={run.folder}")
    assert (result["loss"], result["kl"]) == (run.series("loss", "eval")[-1], run.series("kl", "eval")[-1])
    assert result["student"]["storage_bytes"] < result["teacher"]["storage_bytes"]

    floats = transformers.AutoModelForCausalLM.from_pretrained(work.folder / start, dtype=getattr(torch, dtype))
    state = joined_state(newest_checkpoint(run.folder))
    with torch.no_grad():
        for name, parameter in floats.named_parameters():
            trained = state["model student." + name.removeprefix("model.")].view(parameter.shape)
            assert not torch.equal(trained, parameter) or parameter.dim() == 1, f"{name} stands still"
            parameter.copy_(trained)
    floats.save_pretrained(tmp_path / "floats")
    rules = [f"--rule={one.replace('student', 'model')}" for one in (rule or "").split("\nrule = ") if one]
    Limbeck().run("quantize", f"--model={tmp_path / 'floats'}", f"--output={tmp_path / 'packed'}", f"--quantize={form}", *rules)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.folder / "final", tmp_path / "packed"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(tensor.dtype in (torch.int32, torch.int8, torch.uint8) for tensor in ours.values())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (run.folder / "final", tmp_path / "packed")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"] and configs[0]["dtype"] == configs[1]["dtype"]


FAMILIES = [("gpt2", "nf4"), ("phi3", "nf4"), ("gemma2", "int8"), ("qwen3-moe-mixed", "int8"), ("qwen2", "nf4-double"), ("resnet-bk", "int8")]


@pytest.mark.parametrize(("family", "form"), FAMILIES)
def test_every_family_trains_its_codes(work, tmp_path, family, form):
    """Linear modules that are stored transposed, with biases, or fused; experts, all of them or beside dense layers. The
    average of the weights is what is evaluated, and saved."""
    base = model_zoo.write_model(model_zoo.BY_NAME[family], tmp_path / "base")
    data = token_rows.write(tmp_path / "data", token_rows.random_documents(24, 6, LENGTH, model_zoo.VOCABULARY, seed=5), model_zoo.VOCABULARY)
    keys = CODES | {"student__model": base, "student__quantize": form, "teacher__model": None, "teacher__kind": "self", "data__train": data,
                    "data__validation": data, "optim__ema": 0.7, "train__steps": "3 steps", "eval__every": 3}  # fmt: skip
    run = work.train(f"family-{family}", **keys)
    result = evaluated(work, run, f"--run={run.folder}")
    assert (result["loss"], result["kl"]) == (run.series("loss", "eval")[-1], run.series("kl", "eval")[-1])
    assert result["kl"] > 0 and result["loss"] != evaluated(work, run)["loss"]


def test_training_brings_the_codes_nearer_to_the_floats(work):
    """Held-out KL to a float model that was trained, from rounding to nearest to after training its codes."""
    learned = work.train("learned", teacher__model=None, objective__alpha=0, train__steps="150 steps", optim__learning_rate=5e-3)
    for form in ("int4-sym-g32", "nf4"):
        keys = CODES | {"student__model": learned.folder / "final", "student__quantize": form, "teacher__model": None, "teacher__kind": "self",
                        "objective__alpha": 1, "objective__temperature": 1, "optim__learning_rate": 3e-4, "train__steps": "80 steps",
                        "eval__every": 80}  # fmt: skip
        run = work.train(f"recovered-{form}", **keys)
        nearest, trained = evaluated(work, run)["kl"], run.series("kl", "eval")[-1]
        print(f"{form}: KL to the floats {nearest:.6f} rounded to nearest, {trained:.6f} trained")
        assert 0 < trained < 0.8 * nearest


RANKED = CODES | {"student__quantize": "int4-g32", "precision__rule": table_rules("int8", "int8"), "train__steps": "12 steps",
                  "train__accumulate": 4, "parallel__reduce": "tree"}  # fmt: skip


@pytest.mark.parametrize(("student", "zeros"), [("student", (0, 1, 3)), ("qwen3-moe", (1, 3))])
def test_bits_are_those_of_any_threads_and_ranks_and_of_a_run_that_goes_on(work, sparse, student, zeros):
    """ZeRO-3 fetches the floats that codes are made of, also for the folder; a checkpoint holds the floats."""
    keys = RANKED | {"student__model": work.folder / student, "checkpoint__every": 4, "checkpoint__keep": 3}
    whole = work.train(f"{student}-threads-1", threads=1, **keys).folder
    outcomes = {"2 threads": Outcome.of(work.train(f"{student}-threads-2", threads=2, **keys, train__checkpoint_activations="true").folder)}
    for zero in zeros:
        recipe, run = work.recipe(f"{student}-ranks-{zero}", **keys, parallel__zero=zero), work.folder / f"run-{student}-ranks-{zero}"
        Ranks(2, recipe, f"--run={run}").end().well()
        outcomes[f"ZeRO-{zero}"] = Outcome.of(run)
    parts = work.folder / f"run-{student}-parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(checkpoints(parts)[-1])
    shutil.rmtree(parts / "final")
    ended = Ranks(1, work.recipe(f"{student}-parts", **keys), f"--run={parts}").end().well()
    assert "8 of 12 steps are done" in ended.errors[0], ended.errors
    outcomes["resumed"] = Outcome.of(parts)
    wanted = Outcome.of(whole)
    assert any(tensor.dtype == torch.int32 for tensor in wanted.weights.values())
    for name, other in outcomes.items():
        assert other.differences(wanted) == [], name


@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_the_memory_plan_counts_the_codes(work, recomputed):
    """And no second copy of the floats: what a run of the floats alone does not have are codes, at most."""
    folder = work.folder / "large"
    if not folder.exists():
        saved(work.teacher, folder)
    keys = {"teacher__model": work.folder / "student", "student__model": folder, "train__steps": "2 steps",
            "train__checkpoint_activations": recomputed}  # fmt: skip
    run = work.train(f"planned-{recomputed}", **keys, **CODES, student__quantize="int4-g32")
    floats = work.train(f"floats-{recomputed}", **keys)
    planned, measured = run.result["planned_peak_bytes"], run.result["peak_bytes"]
    print(f"planned {planned}, measured {measured}, of floats {floats.result['peak_bytes']}")
    assert planned == pytest.approx(measured, rel=0.10)
    packed = sum(p.numel() for name, p in work.teacher.named_parameters() if "_proj" in name) * (4 / 8 + 5 / 32)
    assert measured <= floats.result["peak_bytes"] + packed * 1.1


REFUSED = {
    "nothing": (dict(student__quantize=None), "[student] packs no weight, and codes are to be trained: say in which format"),
    "adapter": (dict(adapter__kind="lora"), "trains the weights themselves, and an adapter"),
    "cuda": (dict(student__device="cuda"), "codes are made on the CPU alone, anew in each forward: use --device=cpu"),
    "dtype": (dict(precision__rule="student.layers.0.mlp.* bfloat16\nrule = student.layers.0.** int8"),
              "trains in bfloat16"),
    "float16": (dict(student__dtype="float16"), "its gradients would come through float16"),
    "groups": (dict(student__quantize="int4"), "32 columns are no multiple of its groups of 128"),
    "layout": (dict(student__quantize="nf4", precision__rule="student.lm_head nf4"), "keeps heads and embeddings in floats"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_step(work, case):
    keys, message = REFUSED[case]
    refused_before_anything_runs(work, "train", CODES | {"student__quantize": "int4-g32"} | keys, message)


def test_a_folder_of_codes_and_a_head_of_another_format_than_its_table_are_refused(work, tied, tmp_path):
    Limbeck().run("quantize", f"--model={work.folder / 'student'}", f"--output={tmp_path / 'packed'}", "--quantize=int8")
    keys = CODES | {"student__model": tmp_path / "packed", "precision__rule": "student.layers.0.** int8"}
    refused_before_anything_runs(work, "train", keys, "holds codes already (compressed-tensors), and training them wants the floats")
    keys = CODES | {"student__model": work.folder / "tied", "precision__rule": "student.lm_head int8"}
    refused_before_anything_runs(work, "train", keys, "is tied to an embedding stored in float32")
