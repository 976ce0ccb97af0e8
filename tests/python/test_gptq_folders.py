"""Folders in the layouts of GPTQ and AWQ, as gptqmodel, AutoAWQ and auto-round write them: read, and refused by name where they are not ours.

None of these packages is installed here: the folders are packed by the layout's own description, one code at a time.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy
import parity_measures
import pytest
import torch
from limbeck_runner import LimbeckError
from safetensors.torch import load_file, save_file
from test_compressed_tensors import IDS, base, logits, read_by_transformers  # noqa: F401
from test_packed_folders import resave
from test_quantized_models import OUTPUT_BAR
from training_work import Work

MIDDLE = {2: 2, 3: 4, 4: 8, 8: 128}


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[n, m] codes as int32 [ceil(n bits / 32), m], low bits first; one of 3 bits may end in the next word."""
    packed = numpy.zeros(((codes.shape[0] * bits + 31) // 32 + 1, codes.shape[1]), dtype=numpy.uint64)
    for i, row in enumerate(codes.numpy().astype(numpy.uint64)):
        word, moved = i * bits // 32, row << numpy.uint64(i * bits % 32)
        packed[word] |= moved & numpy.uint64(0xFFFFFFFF)
        packed[word + 1] |= moved >> numpy.uint64(32)
    return torch.from_numpy(packed[:-1].astype(numpy.uint32).view(numpy.int32))


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    """[n, m] codes of 4 bits as int32 [n, m / 8]: of eight neighbours in a row, the one of number j is moved by these bits."""
    moved = numpy.array([0, 4, 1, 5, 2, 6, 3, 7], dtype=numpy.uint32) * 4
    groups = codes.numpy().astype(numpy.uint32).reshape(codes.shape[0], -1, 8)
    return torch.from_numpy((groups << moved).sum(-1, dtype=numpy.uint32).view(numpy.int32))


@dataclass
class Scheme:
    bits: int = 4
    group: int = 32
    symmetric: bool = True
    dtype: torch.dtype = torch.float16
    order: bool = True  # a g_idx, though it says nothing
    keys: dict = field(default_factory=dict)  # more of quantization_config

    def is_awq(self) -> bool:
        return "awq" in (self.keys.get("quant_method"), self.keys.get("packing_format", "").removeprefix("auto_round:auto_"))

    def zeros_are_less_one(self) -> bool:
        packing = self.keys.get("packing_format", self.keys.get("checkpoint_format", "gptq"))
        return packing in ("gptq", "auto_round:auto_gptq")

    def config(self) -> dict:
        return {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.symmetric, "desc_act": False, **self.keys}

    def packed(self, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The tensors of a weight [rows, columns], and what they stand for."""
        rows, columns = weight.shape
        size = columns if self.group == -1 else self.group
        groups = weight.float().view(rows, -1, size)
        top = 2**self.bits - 1
        if self.symmetric:
            scales, zeros = groups.abs().amax(-1) / (top / 2), torch.full(groups.shape[:2], MIDDLE[self.bits])
        else:
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            scales = (high - low) / top
            zeros = torch.round(-low / scales).clamp(0, top).int()
        scales = scales.to(self.dtype)
        wide = scales.float().unsqueeze(-1)
        codes = (torch.round(groups / wide) + zeros.unsqueeze(-1)).clamp(0, top)
        values = ((codes - zeros.unsqueeze(-1)) * wide).view(rows, columns)
        stored = (zeros - 1) % (top + 1) if self.zeros_are_less_one() else zeros
        if self.is_awq():
            return {"qweight": awq_words(codes.view(rows, columns).T), "qzeros": awq_words(zeros.T), "scales": scales.T.contiguous()}, values
        tensors = {
            "qweight": words(codes.view(rows, columns).T, self.bits),
            "qzeros": words(stored, self.bits).T.contiguous(),
            "scales": scales.T.contiguous(),
        }
        if self.order:
            tensors["g_idx"] = torch.arange(columns, dtype=torch.int32) // size
        return tensors, values


def quantized(base: Path, out: Path, scheme: Scheme, own=lambda module: None) -> torch.Tensor:
    """A folder of the scheme, or of what `own` says of a module (a scheme, or False for floats); gives the logits that it means."""
    model = read_by_transformers(base, dtype=torch.float32)
    tensors = dict(model.state_dict())
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        mine = own(name)
        if mine is False:
            continue
        parts, values = (mine or scheme).packed(module.weight.detach())
        del tensors[name + ".weight"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        with torch.no_grad():
            module.weight.copy_(values)
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": scheme.config()}))
    return logits(model)


BY_AUTO_ROUND = {"quant_method": "auto-round", "data_type": "int"}
AWQ = {"quant_method": "awq", "version": "gemm", "zero_point": True, "sym": None, "modules_to_not_convert": None}
SCHEMES = {
    "int4": Scheme(group=128),
    "int4, groups of 64": Scheme(group=64, order=False),
    "int4, groups of 32, bfloat16": Scheme(dtype=torch.bfloat16),
    "int4 with zeros": Scheme(group=64, symmetric=False),
    "int4 with zeros, version 2": Scheme(symmetric=False, keys={"checkpoint_format": "gptq_v2"}),
    "int4, float32 scales": Scheme(dtype=torch.float32, keys={"checkpoint_format": "gptq_v2"}),
    "int3 with zeros": Scheme(bits=3, group=64, symmetric=False),
    "int3, version 2": Scheme(bits=3, group=128, keys={"checkpoint_format": "gptq_v2"}),
    "int2 with zeros": Scheme(bits=2, symmetric=False),
    "int2 by auto-round": Scheme(bits=2, order=False, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:auto_gptq"}),
    "int8": Scheme(bits=8, group=-1),
    "int8, groups of 64": Scheme(bits=8, group=64),
    "int8, groups of 32, bfloat16": Scheme(bits=8, dtype=torch.bfloat16),
    "int8, version 2": Scheme(bits=8, group=-1, order=False, keys={"checkpoint_format": "gptq_v2"}),
    "auto-round": Scheme(group=128, order=False, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:auto_gptq"}),
    "awq": Scheme(group=128, symmetric=False, keys=AWQ),
    "awq, groups of 32, bfloat16": Scheme(symmetric=False, dtype=torch.bfloat16, keys=AWQ | {"version": "GEMM"}),
    "awq by auto-round": Scheme(group=64, symmetric=False, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}),
    "awq by auto-round, symmetric": Scheme(group=64, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}),
    "auto-round with zeros": Scheme(symmetric=False, order=False, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:gptqmodel"}),
}


@pytest.mark.parametrize("kind", SCHEMES)
def test_what_the_folder_stands_for_is_computed(limbeck, base, tmp_path, kind):  # noqa: F811
    scheme = SCHEMES[kind]
    wanted = quantized(base, tmp_path / "packed", scheme)
    zeros = load_file(tmp_path / "packed" / "model.safetensors")["model.layers.0.mlp.up_proj.qzeros"]
    assert scheme.symmetric == (len(zeros.unique()) == (3 if scheme.bits == 3 else 1))  # codes of 3 bits repeat after three words
    ours = limbeck.forward(tmp_path / "packed", IDS, dtype=torch.float32)["logits"]
    assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR
    assert parity_measures.largest_error(limbeck.forward(base, IDS)["logits"], ours) > 1e-3


def test_a_zero_of_zero_wraps_round_as_gptq_counts(limbeck, base, tmp_path):  # noqa: F811
    """Of a group without negative values: less one, it is the greatest code, and nothing is carried into its neighbour."""
    positive = tmp_path / "positive"
    shutil.copytree(base, positive)
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    tensors[name + ".weight"][::3] = tensors[name + ".weight"][::3].abs()
    save_file(tensors, positive / "model.safetensors", metadata={"format": "pt"})
    wanted = quantized(positive, tmp_path / "packed", Scheme(symmetric=False))
    stored = load_file(tmp_path / "packed" / "model.safetensors")[name + ".qzeros"]
    assert all((word & 15) == 15 for word in stored[:, 0].tolist())  # of row 0
    ours = limbeck.forward(tmp_path / "packed", IDS, dtype=torch.float32)["logits"]
    assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR


def test_modules_may_have_schemes_of_their_own(limbeck, base, tmp_path):  # noqa: F811
    """gptqmodel names them by expressions under "dynamic", auto-round by names or expressions under "extra_config"."""
    int8, floats, zeros = Scheme(bits=8, group=-1), "down_proj", Scheme(group=32, symmetric=False)
    of = {"gate_proj": int8, "up_proj": zeros, floats: False}
    own = lambda module: next((scheme for part, scheme in of.items() if part in module), None)  # noqa: E731
    dynamic = {r"-:.*\.down_proj": {}, r"+:.*\.gate_proj": {"bits": 8, "group_size": -1}, r".*up_proj": {"group_size": 32, "sym": False}}
    by_gptq = Scheme(group=128, keys={"dynamic": dynamic})
    extra = {r".*down_proj": {"bits": 16}, r".*gate_proj": {"bits": 8, "group_size": -1}}
    extra |= {f"model.layers.{layer}.mlp.up_proj": {"group_size": 32, "sym": False} for layer in (0, 1)}
    by_auto_round = replace(by_gptq, keys=BY_AUTO_ROUND | {"packing_format": "auto_round:auto_gptq", "extra_config": extra})
    found = []
    for i, scheme in enumerate((by_gptq, by_auto_round)):
        wanted = quantized(base, tmp_path / f"{i}", scheme, own)
        ours = limbeck.forward(tmp_path / f"{i}", IDS, dtype=torch.float32)["logits"]
        assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR
        found.append(ours)
    assert torch.equal(*found)


def test_awq_leaves_modules_with_a_part_of_a_name_in_floats(limbeck, base, tmp_path):  # noqa: F811
    scheme = Scheme(symmetric=False, keys=AWQ | {"modules_to_not_convert": ["o_proj", "layers.1.mlp"]})
    kept = lambda module: False if "o_proj" in module or "layers.1.mlp" in module else None  # noqa: E731
    wanted = quantized(base, tmp_path / "packed", scheme, kept)
    ours = limbeck.forward(tmp_path / "packed", IDS, dtype=torch.float32)["logits"]
    assert parity_measures.largest_error(ours, wanted) < OUTPUT_BAR


def test_it_is_a_teacher_and_a_base_of_adapters(limbeck, tmp_path):
    """As packed as it lies there: the bytes that training plans for its weights are those of its parts."""
    work = Work(tmp_path, limbeck)
    quantized(work.folder / "teacher", tmp_path / "packed-teacher", Scheme())
    quantized(work.folder / "student", tmp_path / "packed-student", Scheme())
    outcome = work.train("packed", teacher__model=tmp_path / "packed-teacher", student__model=tmp_path / "packed-student",
                         train__steps="3 steps", adapter__kind="lora")  # fmt: skip
    assert len(outcome.series("loss")) == 3 and all(loss > 0 for loss in outcome.series("loss"))


def test_it_is_written_anew_in_a_layout_that_is_written(limbeck, base, tmp_path):  # noqa: F811
    """The same codes: compressed-tensors' words are GPTQ's, turned over."""
    wanted = quantized(base, tmp_path / "packed", Scheme(dtype=torch.float32))
    resave(tmp_path / "packed", tmp_path / "again", "--packed", "as-it-is")
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(after[name + ".weight_packed"], before[name + ".qweight"].T)
    assert parity_measures.largest_error(logits(read_by_transformers(tmp_path / "again", dtype=torch.float32)), wanted) < OUTPUT_BAR


MODULE = "model.layers.1.mlp.up_proj"


def damage(kind: str, tensors: dict, quantization: dict) -> None:
    match kind:
        case "no zeros":
            del tensors[MODULE + ".qzeros"]
        case "no scales":
            del tensors[MODULE + ".scales"]
        case "nan":
            tensors[MODULE + ".scales"][0, 0] = float("nan")
        case "fewer codes":
            tensors[MODULE + ".qweight"] = tensors[MODULE + ".qweight"][:-1].contiguous()
        case "wide codes":
            tensors[MODULE + ".qweight"] = tensors[MODULE + ".qweight"].long()
        case "zeros of another shape":
            tensors[MODULE + ".qzeros"] = tensors[MODULE + ".qzeros"][:, :-1].contiguous()
        case "another zero":
            tensors[MODULE + ".qzeros"][2, 1] ^= 2 << 8
        case "reordered":
            tensors[MODULE + ".g_idx"] = tensors[MODULE + ".g_idx"].flip(0).contiguous()
        case "5 bits":
            quantization["bits"] = 5
        case "8 bits with zeros":
            quantization |= {"bits": 8, "sym": False}
        case "one group a row":
            quantization["group_size"] = -1
        case "another packing":
            quantization["checkpoint_format"] = "marlin"
        case "an expression":
            quantization["dynamic"] = {"-:(lm_head": {}}
        case "packed though in floats":
            quantization["dynamic"] = {r"-:.*up_proj": {}}
        case "8-bit activations":
            quantization["act_bits"] = 8
        case "awq's shapes":
            quantization["quant_method"] = "awq"
        case "awq of another version":
            quantization |= {"quant_method": "awq", "version": "gemv"}
        case "auto-round's other packing":
            quantization |= {"quant_method": "auto-round", "packing_format": "auto_round:fp8"}
        case "another method":
            quantization["quant_method"] = "hqq"


DAMAGES = {
    "no zeros": f"{MODULE} of GPTQ: .qzeros is missing",
    "no scales": ".scales is missing",
    "nan": "NaN or infinit",
    "fewer codes": ".qweight is Int [15,384], wanted Int [16,384]",
    "wide codes": ".qweight is Long [16,384], wanted Int [16,384]",
    "zeros of another shape": ".qzeros is Int [4,47], wanted Int [4,48]",
    "another zero": ".qzeros: in row 10 code 6 stands for 0, and config.json says sym, which wants 8",
    "reordered": ".g_idx has column 0 in group 3, wanted 0: groups of reordered columns are not read; quantize without",
    "5 bits": "5 bits, symmetric, group_size 32 are not read: wanted 2 to 4 bits in groups of 32, 64 or 128",
    "8 bits with zeros": "8 bits, with zero points, group_size 32 are not read",
    "one group a row": "4 bits, symmetric, group_size -1 are not read",
    "another packing": 'checkpoint_format "marlin" is not read: wanted gptq, gptq_v2',
    "an expression": '"(lm_head": missing )',
    "packed though in floats": "it is packed, and config.json's quantization_config has its module in floats",
    "8-bit activations": "activations in fewer than 16 bits are not computed",
    "awq's shapes": "of AWQ: .qweight is Int [16,128], wanted Int [128,16]",
    "awq of another version": 'version "gemv" is not read: wanted gemm',
    "auto-round's other packing": 'packing_format "auto_round:fp8" is not read: wanted auto_round, auto_round:auto_awq, auto_round:auto_gptq',
    "another method": 'quant_method "hqq" is not read: wanted "bitsandbytes" (nf4), "compressed-tensors", "gptq", "awq" or "auto-round"',
}


@pytest.fixture(scope="module")
def packed(base, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("gptq") / "packed"
    quantized(base, folder, Scheme())
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_refused_by_name(limbeck, packed, tmp_path, kind):
    folder = tmp_path / "damaged"
    shutil.copytree(packed, folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    damage(kind, tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LimbeckError) as refused:
        limbeck.forward(folder, IDS)
    said = re.sub(r"\s+", " ", str(refused.value))
    assert DAMAGES[kind] in said, said
