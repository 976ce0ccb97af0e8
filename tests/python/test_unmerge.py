"""Adapters taken out of merged weights again: what is left of the base, beside the bound that is printed."""

from __future__ import annotations

import json
from pathlib import Path

import model_zoo
import parity_measures
import pytest
import torch
from limbeck_runner import LimbeckError
from npt_reference import Shape
from safetensors.torch import load_file, save_file
from test_adapters import Adapted
from test_npt import Adapted as NptAdapted

CASES = ["lora", "patterns-rslora", "lora-head", "lora-gpt2", "lora-phi3", "ia3", "ia3-gpt2", "lora-embedding", "lora-experts"]
FLOAT32_BAR = 1e-6  # of the size of each weight: two roundings of a sum a few times as large
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Merged:
    """A base in `dtype`, the adapter of PEFT's beside it, and the folder in which limbeck made one of the two."""

    def __init__(self, limbeck, name: str, folder: Path, dtype: torch.dtype = torch.float32):
        self.limbeck, self.work = limbeck, folder
        self.adapted = Adapted(name, folder, dtype)
        self.base, self.merged, self.out = folder / "rounded", folder / "merged", folder / "unmerged"
        model_zoo.load(self.adapted.family, self.adapted.base, dtype).save_pretrained(self.base)

    def merge(self) -> None:
        self.limbeck.run("merge", "--model", str(self.base), "--adapter", str(self.adapted.folder), "--output",
                         str(self.merged))  # fmt: skip

    def unmerge(self, *flags: str) -> dict:
        report = self.work / "unmerge.json"
        self.limbeck.run("unmerge", "--model", str(self.merged), "--adapter", str(self.adapted.folder), "--output",
                         str(self.out), "--json", str(report), *flags)  # fmt: skip
        return json.loads(report.read_text())["result"]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_base_comes_back_within_the_bound(limbeck, tmp_path, name, dtype):
    case = Merged(limbeck, name, tmp_path, dtype)
    case.merge()
    result = case.unmerge()
    assert {n: t.dtype for n, t in stored(case.out).items()} == {n: t.dtype for n, t in stored(case.base).items()}
    # Stacks of experts are one weight here, and in the files one an expert.
    base, merged, got = (model_zoo.load(case.adapted.family, f, dtype).state_dict() for f in (case.base, case.merged, case.out))
    changed = {n for n in base if not n.endswith(".bias") and not torch.equal(base[n], merged[n])}
    assert len(changed) == len(result["modules"]) > 3
    ours = {n: result["modules"].get(stem, result["modules"].get("model." + stem))
            for n in changed for stem in [n.removesuffix(".weight")]}  # fmt: skip
    gpt2 = case.adapted.family.name == "gpt2"  # whose modules have other names in its files
    assert gpt2 or None not in ours.values()
    bounds = {n: said["bound"] if said else result["worst_bound"] for n, said in ours.items()}
    ratios = []
    for n in base:
        if n not in changed:
            if not n.endswith(".bias"):
                assert torch.equal(got[n], base[n]), n
            continue
        error = float((got[n].double() - base[n].double()).norm() / got[n].double().norm())
        far = float((merged[n].double() - base[n].double()).norm() / base[n].double().norm())
        bound = bounds[n]
        assert error <= bound < far / 5, (n, error, bound, far)
        ratios.append(error / bound)
        if dtype == torch.float32:
            assert error <= FLOAT32_BAR, n
    assert max(bounds.values()) == result["worst_bound"] == result["modules"][result["worst_module"]]["bound"]
    print(f"{name} {dtype}: at most {max(ratios):.2f} of the bound of {result['worst_bound']:.1e}")
    # The bound is two whole half steps a value; of evenly spread ones the root mean square is some 0.3, and what W and
    # its change have in common comes back without any.
    assert max(ratios) > 0.1, "the bound says nothing"


def test_biases_that_ia3_scaled_come_back(limbeck, tmp_path):
    case = Merged(limbeck, "ia3-gpt2", tmp_path)
    case.merge()
    case.unmerge()
    base, merged, got = stored(case.base), stored(case.merged), stored(case.out)
    scaled = [n for n in base if n.endswith("c_attn.bias")]
    assert len(scaled) == 3
    for n in scaled:
        assert parity_measures.relative_frobenius(merged[n], base[n]) > 0.01
        assert parity_measures.relative_frobenius(got[n], base[n]) < FLOAT32_BAR


def test_the_unmerged_model_computes_what_the_base_did(limbeck, tmp_path):
    case = Merged(limbeck, "lora", tmp_path)
    case.merge()
    case.unmerge()
    logits = {f: limbeck.forward(f, case.adapted.inputs.tensors)["logits"] for f in (case.base, case.merged, case.out)}
    pick = case.adapted.compared
    assert parity_measures.largest_error(pick(logits[case.merged]), pick(logits[case.base])) > 0.01
    assert parity_measures.largest_error(pick(logits[case.out]), pick(logits[case.base])) < 1e-5


def test_factors_that_push_weights_below_the_normal_range_are_in_the_bound(limbeck, tmp_path):
    """float16 has ever fewer digits below 6e-5, and dividing by the factor brings what was lost back to full size."""
    case = Merged(limbeck, "ia3", tmp_path, torch.float16)
    file = case.adapted.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.v_proj.ia3_l"
    tensors[name].flatten()[:8] = 1e-5
    save_file(tensors, file)
    case.merge()
    result = case.unmerge()
    base, got = (stored(folder)["model.layers.0.self_attn.v_proj.weight"].double() for folder in (case.base, case.out))
    error, said = float((got - base).norm() / got.norm()), result["modules"]["model.layers.0.self_attn.v_proj"]
    assert result["worst_module"] == "model.layers.0.self_attn.v_proj"
    assert 5 * torch.finfo(torch.float16).eps < error <= said["bound"] == result["worst_bound"] < 10 * error
    assert said["rounding"] < torch.finfo(torch.float16).eps  # of the way back alone


def refused(case: Merged, message: str, *flags: str) -> None:
    with pytest.raises(LimbeckError) as failure:
        case.unmerge(*flags)
    text = str(failure.value)
    assert text.startswith("exit 2") and message in text, text
    assert not case.out.exists()


def test_dora_is_refused(limbeck, tmp_path):
    case = Merged(limbeck, "dora", tmp_path)
    case.merge()
    refused(case, "it is DoRA, which scaled the weight by norms of W + s B A")


def test_a_factor_of_zero_is_refused_by_name(limbeck, tmp_path):
    case = Merged(limbeck, "ia3", tmp_path)
    file = case.adapted.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.v_proj.ia3_l"
    tensors[name].flatten()[4] = 0
    save_file(tensors, file)
    case.merge()
    refused(case, "[model.layers.1.self_attn.v_proj] its adapter cannot be taken out: it has 1 factors of zero in ia3_l, the "
                  "first at 4")  # fmt: skip


def test_quantized_weights_and_tied_heads_and_npt_are_refused(limbeck, tmp_path):
    case = Merged(limbeck, "lora", tmp_path)
    case.merge()
    refused(case, "taken out of float weights alone", "--quantize", "nf4")
    for folder in ("tied", "npt"):
        (tmp_path / folder).mkdir()
    tied = Merged(limbeck, "lora-tied-head", tmp_path / "tied")
    tied.merged = tied.base
    refused(tied, "shares its weight with the embedding")
    npt = NptAdapted(Shape(), tmp_path / "npt")
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*\[model.layers.0\].*no weight \(npt\)"):
        limbeck.run("unmerge", "--model", str(npt.base), "--adapter", str(npt.folder), "--output", str(tmp_path / "out"))
