"""Whether Limbeck reads what others quantize: peer_folders.py --model MODEL --calibration SHARDS --work DIR [--only llmcompressor,…]

llmcompressor, auto-round and gptqmodel each write folders of MODEL in 4 and in 8 bits, from rows of the data. What the folder's own
loader computes of further rows, in float32, is held against `limbeck forward`: the greatest difference of a logit, by the greatest logit. Where a loader
computes in half alone, it unpacks and float32 multiplies. The peers are none of our requirements: importable (pip install --target DIR --no-deps),
or said to be missing and left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from limbeck_predictions import logits_of, rows_of

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # of two cores it takes one, and then refuses one

HELD_OUT = 8  # rows that are compared


def floats(model: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, device_map="cpu")


def llmcompressor(scheme: str) -> Callable:
    def write(model: Path, rows: torch.Tensor, folder: Path) -> None:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier

        of_floats = floats(model)
        data = torch.utils.data.DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=1)
        oneshot(model=of_floats, dataset=data, recipe=GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]),
                num_calibration_samples=len(rows), max_seq_length=rows.shape[1])  # fmt: skip
        of_floats.save_pretrained(folder, save_compressed=True)

    return write


def auto_round(bits: int) -> Callable:
    def write(model: Path, rows: torch.Tensor, folder: Path) -> None:
        from auto_round import AutoRound

        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        data = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
        tuned = AutoRound(floats(model), tokenizer, bits=bits, group_size=128, sym=True, iters=20, dataset=data, seqlen=rows.shape[1],
                          nsamples=len(rows), device_map="cpu", amp=False, batch_size=8, enable_torch_compile=False)  # fmt: skip
        made = folder.with_suffix(".made")
        tuned.quantize_and_save(str(made), format="auto_round")
        next(iter(made.rglob("config.json"))).parent.rename(folder)
        shutil.rmtree(made, ignore_errors=True)

    return write


def gptqmodel(bits: int) -> Callable:
    def write(model: Path, rows: torch.Tensor, folder: Path) -> None:
        from gptqmodel import GPTQModel, QuantizeConfig

        loaded = GPTQModel.load(str(model), QuantizeConfig(bits=bits, group_size=128), device="cpu")
        loaded.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=1)
        loaded.save(str(folder))

    return write


def by_transformers(folder: Path) -> torch.nn.Module:
    """auto-round's loader makes halves of all floats, of the angles of positions too: what it reads is then computed with in float32,
    scales too, and the angles are made anew."""
    model = floats(folder)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return model


def by_gptqmodel(folder: Path) -> torch.nn.Module:
    """Its loader and its unpacking; its products are of half types alone, so torch multiplies."""
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
    for name, module in list(model.named_modules()):
        if hasattr(module, "dequantize_weight"):
            module.scales = module.scales.float()
            weight = module.dequantize_weight().T.contiguous().float()
            dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
            dense.weight.data = weight
            if module.bias is not None:
                dense.bias.data = module.bias.float()
            model.set_submodule(name, dense)
    return model.float()


PEERS: dict[str, tuple[Callable, Callable]] = {
    "llmcompressor-w4a16": (llmcompressor("W4A16"), by_transformers),
    "llmcompressor-w8a16": (llmcompressor("W8A16"), by_transformers),
    "auto-round-int4": (auto_round(4), by_transformers),
    "auto-round-int8": (auto_round(8), by_transformers),
    "gptqmodel-int4": (gptqmodel(4), by_gptqmodel),
    "gptqmodel-int8": (gptqmodel(8), by_gptqmodel),
}


def difference(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs.double() - ours.double()).abs().max() / theirs.double().abs().max())


def compare(name: str, options: argparse.Namespace, rows: torch.Tensor) -> str:
    write, load = PEERS[name]
    folder = options.work / name
    shutil.rmtree(folder, ignore_errors=True)
    write(options.model, rows[HELD_OUT:], folder)
    held_out = rows[:HELD_OUT]
    loaded = load(folder)
    with torch.no_grad():
        theirs = loaded(input_ids=held_out).logits.float()
        of_floats = floats(options.model)(input_ids=held_out).logits
    ours = logits_of(folder, held_out, options.work)
    equal = float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
    return f"| {name} | {difference(theirs, ours):.1e} | {100 * equal:.2f} | {difference(theirs, of_floats):.1e} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="token shards")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="beginnings of names, with commas")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options.calibration, HELD_OUT + options.rows, options.length)
    wanted, left_out = tuple(options.only.split(",")), 0
    table = ["| folder | ours from its own loader | same next token, % | its own loader from the floats |", "|---|---|---|---|"]
    for name in PEERS:
        if not name.startswith(wanted):
            continue
        try:
            table.append(compare(name, options, rows))
        except Exception as error:  # noqa: BLE001: whatever a peer says, the others are compared
            left_out += 1
            print(f"{name}: left out: {type(error).__name__}: {error}", file=sys.stderr)
    print("\n".join(table))  # last, below what the peers say
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
