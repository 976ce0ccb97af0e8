"""Adapters merged into quantized bases: each of the three ways against formulas, bitsandbytes and PEFT in float64."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import bitsandbytes.functional as bnb
import model_zoo
import parity_measures
import peft
import pytest
import test_adapters
import torch
import transformers
from limbeck_runner import LimbeckError
from safetensors.torch import load_file, save_file
from test_quantized_models import ADAPTERS, by_matrix, quantized_weights
from test_quantized_ops import FORMATS, SHORT, bits_of, reference_blockwise

OUTPUT_BAR = 1e-5  # of the largest entry
WAYS = ("original", "dequantized", "requantized")


def int8(w: torch.Tensor) -> torch.Tensor:
    scale = w.abs().amax(1, keepdim=True) / 127
    return torch.round(w / scale).clamp(-127, 127) * scale


def in_few_bits(w: torch.Tensor, bits: int, size: int, symmetric: bool) -> torch.Tensor:
    groups, last, middle = [], 2**bits - 1, 2 ** (bits - 1)
    for group in w.split(size, dim=1):
        low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
        scale = torch.maximum(high, -low) / (last / 2) if symmetric else (high - low) / last
        zero = torch.full_like(scale, middle) if symmetric else torch.round(-low / scale).clamp(0, last)
        groups.append(((torch.round(group / scale) + zero).clamp(0, last) - zero) * scale)
    return torch.cat(groups, 1)


def blocks_of(w: torch.Tensor) -> torch.Tensor:
    """A block a row: bitsandbytes' CPU library cuts other blocks when it reads than when it writes where they cross rows."""
    return w.reshape(-1, 64)


def nf4(w: torch.Tensor) -> torch.Tensor:
    return bnb.dequantize_4bit(*bnb.quantize_4bit(blocks_of(w), blocksize=64, quant_type="nf4")).view(w.shape)


def nf4_double(w: torch.Tensor) -> torch.Tensor:
    packed, state = bnb.quantize_4bit(blocks_of(w), blocksize=64, quant_type="nf4")
    offset = state.absmax.mean()
    twice = bnb.quantize_4bit(blocks_of(w), blocksize=64, quant_type="nf4", compress_statistics=True)[1]
    codes, scales = reference_blockwise(state.absmax - offset, twice.state2.code)
    blocks = torch.arange(len(codes)) // 256
    state.absmax = twice.state2.code[codes.long()] * scales[blocks] + offset
    return bnb.dequantize_4bit(packed, state).view(w.shape)


# Also on what is not quantized: embeddings.
ADAPTED = ADAPTERS | {"lora-embedding": test_adapters.CASES["lora-embedding"]}
INDEPENDENT = {"int8": int8, "nf4": nf4, "nf4-double": nf4_double} | {
    form: functools.partial(in_few_bits, bits=bits_of(form), size=SHORT[form], symmetric="sym" in form) for form in FORMATS if form in SHORT
}


def test_every_format_is_here():
    assert set(INDEPENDENT) == set(FORMATS)


class Case:
    """A base, what its codes stand for, and an adapter that PEFT made beside the latter."""

    def __init__(self, name: str, form: str, folder: Path):
        family, config = ADAPTED[name]
        self.form, self.work = form, folder
        self.family = model_zoo.BY_NAME[family]
        self.base = model_zoo.write_model(self.family, folder / "base")
        self.inputs = model_zoo.make_inputs(self.family)
        plain = model_zoo.load(self.family, self.base, torch.float32)
        conv1d = {n + ".weight" for n, m in plain.named_modules() if isinstance(m, transformers.pytorch_utils.Conv1D)}
        self.packed = set(quantized_weights(plain))
        self.turned = conv1d & self.packed
        beside = self.with_weights(plain, {n: self.quantized(n, plain.get_parameter(n).detach()) for n in self.packed})
        self.codes = {n: beside.get_parameter(n).detach().double() for n in self.packed}
        adapted = peft.get_peft_model(beside, config, autocast_adapter_dtype=False).eval()
        test_adapters.scattered(adapted)
        self.adapter = folder / "adapter"
        adapted.save_pretrained(self.adapter)
        self.trained = adapted.double().merge_and_unload().state_dict()  # what the adapter was trained beside
        wide = plain.double()
        self.before = {n: t.clone() for n, t in wide.state_dict().items()}
        self.on_original = peft.PeftModel.from_pretrained(wide, self.adapter, autocast_adapter_dtype=False).merge_and_unload()
        self.on_original = self.on_original.state_dict()
        # Of the modules that the adapter changes.
        self.changed = [n for n in sorted(self.packed) if not torch.equal(self.trained[n], self.codes[n])]

    def with_weights(self, model, weights):
        model = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in weights.items():
                model.get_parameter(name).copy_(weight)
        return model

    def quantized(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What the codes of this weight stand for; GPT-2 stores it the other way round."""
        turned = name in self.turned
        values = by_matrix(name, (weight.T if turned else weight).float(), INDEPENDENT[self.form])
        return values.T if turned else values

    def merge(self, limbeck, into: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict]:
        out, report = self.work / f"{into}-{dtype}", self.work / "merge.json"
        flags = ["--dtype", str(dtype).removeprefix("torch.")]
        limbeck.run("merge", "--model", str(self.base), "--adapter", str(self.adapter), "--output", str(out), "--quantize",
                    self.form, "--into", into, "--json", str(report), *flags)  # fmt: skip
        self.folder = out
        return model_zoo.load(self.family, out, dtype).state_dict(), json.loads(report.read_text())["result"]

    def wanted(self, into: str, ours: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Every weight of the folder in float64; ours: the sums in float32 that are quantized again."""
        if into == "original":
            return self.on_original
        if into == "dequantized":
            return self.trained
        again = {n: self.quantized(n, ours[n]).double() for n in self.changed}
        return self.trained | again

    def logits(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        model = model_zoo.load(self.family, self.base, torch.float32)
        model.load_state_dict(state)
        extra = {"use_cache": False} if self.family.kind == "decoder" else {}
        output = model(**self.inputs.tensors, **extra)[self.family.output].detach()
        return parity_measures.compared(self.family, self.inputs, output)


CASES = [("lora", form) for form in INDEPENDENT if form not in ("int3", "int2-sym")] + [  # int3-sym-g32 and int2-g32 are there
    ("dora", "nf4"), ("dora", "int8"), ("ia3", "nf4"), ("ia3", "int4"), ("rslora", "int4"), ("dora-bias", "int4"),
    ("lora-head", "nf4"), ("lora-gpt2", "nf4"), ("lora-embedding", "nf4"), ("lora-experts", "int4"),
]  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Each case, made once: nobody changes it."""
    return functools.lru_cache(maxsize=None)(lambda name, form: Case(name, form, tmp_path_factory.mktemp(f"{name}-{form}")))


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_folder_holds_what_each_way_says(limbeck, cases, name, form):
    case = cases(name, form)
    assert len(case.changed) > 1
    sums = None
    for into in ("dequantized", "original", "requantized"):
        stored, result = case.merge(limbeck, into, torch.float32)
        wanted = case.wanted(into, sums)
        assert stored.keys() == wanted.keys()
        errors = {n: parity_measures.relative_frobenius(stored[n], wanted[n]) for n in wanted if wanted[n].any()}
        assert {n: e for n, e in errors.items() if e > 1e-6} == {}, into
        if into == "dequantized":
            sums = stored
        if into == "requantized":  # from the same sums: the same codes, each of them
            assert [n for n in case.changed if not torch.equal(stored[n], case.quantized(n, sums[n]))] == []
        if into != "original":  # what is quantized and not adapted is what its codes stand for
            assert [n for n in case.packed - set(case.changed) if not torch.equal(stored[n].double(), case.codes[n])] == []
        else:
            assert [n for n in case.packed - set(case.changed) if not torch.equal(stored[n].double(), case.before[n])] == []
        got = limbeck.forward(case.folder, case.inputs.tensors)[case.family.output]
        ours = parity_measures.compared(case.family, case.inputs, got)
        assert parity_measures.largest_error(ours, case.logits(wanted)) <= OUTPUT_BAR, into
        assert result["into"] == into and result["quantized_modules"] == len(case.changed)
    beside = limbeck.forward(case.base, case.inputs.tensors, quantize=form, adapter=case.adapter)[case.family.output]
    trained = case.logits(case.trained)
    compared = parity_measures.compared(case.family, case.inputs, beside)
    assert parity_measures.largest_error(compared, trained) <= OUTPUT_BAR


def expected_errors(case: Case, stored: dict[str, torch.Tensor]) -> dict[str, dict]:
    lost = {n: float((stored[n].double() - case.trained[n]).norm()) for n in case.changed}
    sizes = {
        "of_weight": {n: float(case.trained[n].norm()) for n in case.changed},
        "of_change": {n: float((case.trained[n] - case.codes[n]).norm()) for n in case.changed},
    }
    found = {}
    for measure, size in sizes.items():
        shares = {n: lost[n] / size[n] for n in case.changed}
        found[measure] = {"mean": math.fsum(shares.values()) / len(shares), "worst": max(shares.values()), "shares": shares}
    return found


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_table_says_what_each_way_loses(limbeck, cases, name, form, dtype):
    """The numbers of every row, whichever way is taken, against the three folders."""
    case = cases(name, form)
    tables, worst = [], {}
    for into in WAYS:
        stored, result = case.merge(limbeck, into, dtype)
        tables.append(result["errors"])
        for measure, wanted in expected_errors(case, stored).items():
            got = result["errors"][into][measure]
            assert got["mean"] == pytest.approx(wanted["mean"], rel=2e-3), (into, measure)
            assert got["worst"] == pytest.approx(wanted["worst"], rel=2e-3), (into, measure)
            if name != "lora-gpt2":  # whose modules have other names in its files
                worst_weight = got["worst_module"] + (".weight" if ".experts." not in got["worst_module"] else "")
                assert wanted["shares"][worst_weight] == pytest.approx(wanted["worst"], rel=4e-3)
            worst[into, measure] = wanted["worst"]
    assert tables[0] == tables[1] == tables[2]
    # bfloat16's rounding is the least, quantizing again the most but for int8, and DoRA's norms are of other weights.
    assert worst["dequantized", "of_weight"] < worst["original", "of_weight"]
    assert worst["dequantized", "of_weight"] < worst["requantized", "of_weight"]
    print({key: f"{value:.2e}" for key, value in worst.items()})


def test_a_change_that_drowns_is_seen(limbeck, tmp_path):
    """An adapter far smaller than a step of int4: quantized again nothing is left of it, dequantized all."""
    case = Case("lora", "int4", tmp_path)
    file = case.adapter / "adapter_model.safetensors"
    save_file({n: t * (0.01 if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    errors = case.merge(limbeck, "requantized", torch.float32)[1]["errors"]
    assert errors["requantized"]["of_change"]["mean"] > 1
    assert errors["requantized"]["of_weight"]["mean"] < 0.2
    assert errors["dequantized"]["of_change"]["worst"] < 1e-3


def test_what_is_written_and_lost_is_printed(limbeck, cases, tmp_path):
    case = cases("lora", "nf4")
    arguments = ["merge", "--model", str(case.base), "--adapter", str(case.adapter), "--quantize", "nf4", "--into"]
    printed = limbeck.run(*arguments, "requantized", "--output", str(tmp_path / "out")).stdout
    rows = [line.split()[0] for line in printed.splitlines() if line.startswith(WAYS)]
    assert rows == list(WAYS) and "requantized *" in printed
    assert "what new nf4 codes of the sum stand for, in float32 and not packed: --quantize=nf4 packs them" in printed
    # nf4 keeps each block's largest value and every level: reading it packed changes nothing.
    packed = limbeck.forward(tmp_path / "out", case.inputs.tensors, quantize="nf4")["logits"]
    plain = limbeck.forward(tmp_path / "out", case.inputs.tensors)["logits"]
    pick = lambda tensor: parity_measures.compared(case.family, case.inputs, tensor)  # noqa: E731
    assert parity_measures.largest_error(pick(packed), pick(plain)) <= OUTPUT_BAR


def int8_values(stored: dict[str, torch.Tensor], name: str, columns: int) -> torch.Tensor:
    codes = stored[f"{name}_packed"].view(torch.uint8)[:, :columns].to(torch.int32) - 128
    return codes * stored[f"{name}_scale"].float()


@pytest.mark.parametrize(("name", "form"), [("lora", "int8"), ("dora-bias", "int8"), ("lora", "nf4"), ("ia3", "nf4-double"), ("lora-head", "nf4"), ("lora-experts", "int8")])
def test_new_codes_are_stored_as_such(limbeck, cases, tmp_path, name, form):
    """In float32 scales are what they were: the packed folder is the other one's values to the bit."""
    case, folders, said = cases(name, form), {}, {}
    for kind in ([], ["--packed"]):
        folders[bool(kind)] = tmp_path / f"out{len(kind)}"
        limbeck.run("merge", "--model", str(case.base), "--adapter", str(case.adapter), "--quantize", form, "--into", "requantized",
                    "--output", str(folders[bool(kind)]), "--json", str(tmp_path / "said.json"), *kind)  # fmt: skip
        said[bool(kind)] = json.loads((tmp_path / "said.json").read_text())["result"]
    assert said[True]["layout"] == ("bitsandbytes" if form.startswith("nf4") else "compressed-tensors")
    values, codes = (limbeck.forward(folders[packed], case.inputs.tensors)[case.family.output] for packed in (False, True))
    pick = lambda tensor: parity_measures.compared(case.family, case.inputs, tensor)  # noqa: E731
    assert parity_measures.largest_error(pick(codes), pick(values)) <= OUTPUT_BAR
    assert said[True]["errors"] == said[False]["errors"]
    stored, plain = (load_file(folders[packed] / "model.safetensors") for packed in (True, False))
    names = set(case.packed) & plain.keys()
    assert sum(tensor.nbytes for tensor in stored.values()) < sum(tensor.nbytes for tensor in plain.values()) - 2 * sum(plain[n].numel() for n in names)
    if form == "int8":
        for n in names:
            assert torch.equal(int8_values(stored, n, plain[n].shape[1]), plain[n]), n


@pytest.mark.parametrize("name", ["lora", "lora-experts"])
def test_codes_of_a_bfloat16_folder_have_its_scales(limbeck, cases, tmp_path, name):
    case = cases(name, "int8")
    arguments = ["merge", "--model", str(case.base), "--adapter", str(case.adapter), "--quantize", "int8", "--into", "requantized", "--dtype", "bfloat16"]
    limbeck.run(*arguments, "--packed", "--output", str(tmp_path / "codes"), "--json", str(tmp_path / "said.json"))
    stored = load_file(tmp_path / "codes" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name.endswith("_scale")} == {torch.bfloat16}
    errors = json.loads((tmp_path / "said.json").read_text())["result"]["errors"]
    limbeck.run(*arguments, "--output", str(tmp_path / "values"), "--json", str(tmp_path / "said.json"))
    as_values = json.loads((tmp_path / "said.json").read_text())["result"]["errors"]
    assert errors["requantized"]["of_weight"]["mean"] == pytest.approx(as_values["requantized"]["of_weight"]["mean"], rel=0.1)
    assert errors["original"] == as_values["original"]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "codes", device_map="cpu")
    values, of_sums = load_file(tmp_path / "values" / "model.safetensors"), 0
    for n in [n.removesuffix("_packed") for n in stored if n.endswith("_packed")]:
        meant = int8_values(stored, n, values[n].shape[1])
        of_sums += 1
        assert parity_measures.relative_frobenius(meant.double(), values[n].double()) < 1e-2, n
    assert of_sums > len(case.changed) // 2



def test_an_adapter_on_float_modules_alone_is_no_matter_of_codes(limbeck, tmp_path):
    base = test_adapters.Adapted("lora", tmp_path)
    head = peft.get_peft_model(model_zoo.load(base.family, base.base, torch.float32), test_adapters.lora(["lm_head"]))
    test_adapters.scattered(head)
    head.save_pretrained(tmp_path / "head")
    with pytest.raises(LimbeckError, match="(?s)exit 2: .*none of the 1 adapted modules is quantized: merge without"):
        limbeck.run("merge", "--model", str(base.base), "--adapter", str(tmp_path / "head"), "--quantize", "nf4", "--into",
                    "original", "--output", str(tmp_path / "out"))  # fmt: skip


REFUSED = {
    "no choice": (["--quantize", "nf4"], ["--quantize=nf4 without --into", *(f"--into={way}" for way in WAYS)]),
    "no codes": (["--into", "original"], ["--into=original without --quantize", "leave --into out"]),
    "another word": (["--quantize", "nf4", "--into", "codes"], ["into", "original", "dequantized", "requantized"]),
    "codes that no folder holds": (["--quantize", "int4", "--into", "requantized", "--packed"], ["columns are no multiple of its groups of 128"]),
    "packed values": (["--quantize", "nf4", "--into", "dequantized", "--packed"], ["--packed stores the codes that --into=requantized makes"]),
    "float64": (["--quantize", "nf4", "--into", "original", "--dtype", "float64"], ["quantized weights compute in float32"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused(limbeck, cases, tmp_path, name):
    flags, messages = REFUSED[name]
    case = cases("lora", "nf4")
    with pytest.raises(LimbeckError) as refused:
        limbeck.run("merge", "--model", str(case.base), "--adapter", str(case.adapter), "--output", str(tmp_path / "out"),
                    *flags)  # fmt: skip
    text = str(refused.value)
    assert text.startswith("exit 2") and [m for m in messages if m not in text.split("\n", 1)[1]] == [], text
    assert not (tmp_path / "out").exists()
