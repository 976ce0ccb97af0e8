#!/usr/bin/env python3
"""quantize_similarity.py: what an encoder of sentences (MiniLM) loses in few bits: 1 - cosine of each sentence's embedding to the
float one's (with the middle 95 % of sentences drawn again), Spearman's correlation of the similarities of drawn pairs, and for how
many sentences the most similar other one is still the same.

  quantize_similarity.py --model MODEL --sentences FILE --data SHARDS --work DIR [--only int8,budget]

FILE has a sentence a line; the first --count of them measure. SHARDS are what tools/prepare_data.py makes of the others (--split-lines
--special-tokens --no-append-eos), and decide. Embeddings are `limbeck forward`'s in float32, the mean of each sentence's states.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from quantize_quality import CHOICES, Bench, limbeck, payload, torchao_way
from safetensors.torch import load_file, save_file

PAIRS = 20_000


def ranks(values: torch.Tensor) -> torch.Tensor:
    order = values.argsort()
    return torch.empty_like(values).scatter_(0, order, torch.arange(len(values), dtype=values.dtype))


class Sentences(Bench):
    def __init__(self, options: argparse.Namespace):
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        lines = options.sentences.read_text().splitlines()[: options.count]
        self.encoded = dict(tokenizer(lines, padding=True, truncation=True, max_length=options.length, return_tensors="pt"))
        self.encoded.pop("token_type_ids", None)
        generator = torch.Generator().manual_seed(1)
        self.pairs = torch.randint(len(lines), (2, PAIRS), generator=generator)
        self.pairs = self.pairs[:, self.pairs[0] != self.pairs[1]]
        super().__init__(options)

    def read_rows(self) -> None:
        self.calibration = self.rows = None

    def model(self, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
        return transformers.AutoModel.from_pretrained(self.options.model, dtype=dtype, device_map="cpu")

    def predictions(self, folder: Path) -> torch.Tensor:
        rows, out = self.work / "rows.safetensors", self.work / "states.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in self.encoded.items()}, rows)
        limbeck("forward", f"--model={folder}", f"--input={rows}", f"--output={out}", "--dtype=float32", "--pooling=mean")
        pooled = load_file(out)["pooled"].double()
        out.unlink()
        return torch.nn.functional.normalize(pooled, dim=-1)

    def measured(self, folder: Path) -> dict:
        floats, mix = self.of_floats, self.predictions(folder)
        turned = (floats - mix).square().sum(-1) / 2
        draws = torch.randint(len(turned), (2000, len(turned)), generator=torch.Generator().manual_seed(1))
        low, high = turned[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        similar = [ranks((of[self.pairs[0]] * of[self.pairs[1]]).sum(-1)) for of in (floats, mix)]
        nearest = [(of @ of.T).fill_diagonal_(-2).argmax(1) for of in (floats, mix)]
        return {"turned": float(turned.mean()), "low": low, "high": high, "spearman": float(torch.corrcoef(torch.stack(similar))[0, 1]),
                "same_nearest": float((nearest[0] == nearest[1]).double().mean())}  # fmt: skip


def ours(bench: Sentences, *flags: str) -> Callable[[Path], tuple[Path, int]]:
    options = bench.options
    data = [f"--data={options.data}", "--packing=padded", f"--sequence-length={options.length}", f"--calibration-rows={options.calibration_rows}",
            "--held-out-rows=16", "--exchange-rows=16", "--exchange-steps=3"]  # fmt: skip
    budgeted = any(flag.startswith("--budget") for flag in flags)
    if not budgeted and not any(flag.startswith(("--rounding", "--policy=dynamic")) for flag in flags):
        data = []
    if budgeted:
        data += [f"--formats={CHOICES}", f"--scores={bench.work / 'scores.jsonl'}"]

    def make(folder: Path) -> tuple[Path, int]:
        limbeck("quantize", f"--model={options.model}", f"--output={folder}", "--dtype=float16", *flags, *data)
        return folder, payload(folder)

    return make


def ways(bench: Sentences) -> dict[str, Callable]:
    table = "--rule=model.embed_tokens int8"
    found = {}
    for form in ("int8", "int4", "int4-g32"):
        found[form] = ours(bench, f"--quantize={form}", table)
        found[f"{form}+compensated"] = ours(bench, f"--quantize={form}", table, "--rounding=compensated")
    found["nf4"] = ours(bench, "--quantize=nf4")
    found["static"] = ours(bench, "--policy=static", "--tag=embedding int8")
    found["dynamic"] = ours(bench, "--policy=dynamic", table)
    for budget in ("4.2x", "4.6x", "5x"):
        found[f"budget-{budget}"] = ours(bench, f"--budget={budget}")
        found[f"budget-{budget}+compensated"] = ours(bench, f"--budget={budget}", "--rounding=compensated")
    found |= {f"torchao-{form}": torchao_way(bench, form, bench.linears) for form in ("int8", "int4-g32", "int4-g128")}
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--calibration-rows", type=int, default=128)
    options = parser.parse_args(arguments)
    bench = Sentences(options)
    model = bench.model()
    bench.tables = ["embed_tokens"]
    bench.linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "encoder.layer" in name}
    values = sum(parameter.numel() for parameter in model.parameters())
    wanted = [name for name in options.only.split(",") if name]
    print("| way | bytes | times smaller than float32 | 1 - cosine | Spearman of similarities | same nearest, % | seconds |\n|---|---|---|---|---|---|---|")
    for name, make in ways(bench).items():
        one = bench.point(name, make) if not wanted or any(name.startswith(word) for word in wanted) else None
        if one is not None:
            print(f"| {name} | {one['bytes']} | {4 * values / one['bytes']:.2f} | {one['turned']:.6f} ({one['low']:.6f} to {one['high']:.6f}) | "
                  f"{one['spearman']:.6f} | {100 * one['same_nearest']:.1f} | {one['seconds']:.0f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
