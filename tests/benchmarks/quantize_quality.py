#!/usr/bin/env python3
"""quantize_quality.py: what a decoder loses in few bits, by limbeck quantize and by others, at equal bytes.

Makes folders of one trained model by every way that is asked for, weighs each (all bytes of tensors), and holds what it predicts
on held-out rows against the floats: perplexity, and KL a token with the middle 95 % of rows drawn again. All predictions are
`limbeck forward`'s in float32, of the folder itself, or of float weights that a peer's codes stand for where the folder is none
that Limbeck reads. For every peer's folder there is one of ours of at most as many bytes, by --budget and compensated rounding.

  quantize_quality.py --model MODEL --calibration DATA/train --data DATA/validation --work DIR [--only int8,torchao-int4-g32,...]

budget-B-scores-alone is a budget's mix without exchanges, budget-B-permuted the same with every module's scores given to another
one; budget-B+distilled trains the codes of a budget's mix (student.train_codes) towards the floats for --distil-steps updates.

What was measured is kept in DIR/results.json and not measured again. Peers are none of our requirements: torchao, llmcompressor,
auto-round must be importable (pip install --target DIR --no-deps ..., PYTHONPATH), llama.cpp's libllama.so is named by
--llama-cpp. What is missing is said and left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from limbeck_predictions import limbeck, logits_of, rows_of
from safetensors import safe_open
from safetensors.torch import save_file

CHOICES = "float,int8,int8-g32,int4-g32,int4-g64,int4,int4-sym-g32,int4-sym"
FEWER = ",int3-g32,int3-g64,int3,int2-g32,int2-g64,int2"  # for budgets that the others do not hold, with scores of their own
TABLES = ("--tag=embedding int8", "--tag=head int8")
LEAST_BITS = 4.6  # a weight, that CHOICES hold
BITS = ("5", "5.33", "6", "7", "8")
FEW_BITS = ("3", "3.5", "4", "4.5")
GGUF_TYPES = {"q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q4_k_m": 15, "q4_k_s": 14, "q4_1": 3, "q4_0": 2, "q3_k_m": 12, "q2_k": 10}
LLMC = {"w4a16": ("W4A16", 128), "w4a16-g32": ("W4A16", 32), "w8a16": ("W8A16", None)}
AUTO_ROUND = {"int4": (4, 128, True), "int4-g32": (4, 32, False), "int8": (8, 128, True)}


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options, self.work = options, options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.read_rows()
        self.kept = self.work / "results.json"
        self.results = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.floats = self.work / "floats"
        if not self.floats.exists():
            self.float_folder(self.model().state_dict(), self.floats)
        self.of_floats = self.predictions(self.floats)

    def read_rows(self) -> None:
        self.rows = rows_of(self.options.data, self.options.rows, self.options.length)
        self.calibration = rows_of(self.options.calibration, self.options.calibration_rows, self.options.length)

    def model(self, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
        return transformers.AutoModelForCausalLM.from_pretrained(self.options.model, dtype=dtype, device_map="cpu")

    def float_folder(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """A folder of float32 weights, with the model's own config and tokenizer."""
        folder.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (self.options.model / name).exists():
                shutil.copy(self.options.model / name, folder)
        config = json.loads((self.options.model / "config.json").read_text())
        config["torch_dtype"] = config["dtype"] = "float32"
        (folder / "config.json").write_text(json.dumps(config))
        if config.get("tie_word_embeddings"):
            weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
        save_file({name: tensor.float().contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip

    def predictions(self, folder: Path) -> torch.Tensor:
        """Log-probabilities [rows, length - 1, vocabulary]."""
        return logits_of(folder, self.rows, self.work)[:, :-1].log_softmax(-1)

    def measured(self, folder: Path) -> dict:
        p, q, kl, loss, float_loss = self.of_floats, self.predictions(folder), [], [], []
        for row, ids in enumerate(self.rows):
            of_floats, of_codes = p[row].double(), q[row].double()
            kl.append(float((of_floats.exp() * (of_floats - of_codes)).sum(-1).mean()))
            loss.append(-float(of_codes.gather(1, ids[1:, None]).mean()))
            float_loss.append(-float(of_floats.gather(1, ids[1:, None]).mean()))
        by_row, more = torch.tensor(kl, dtype=torch.float64), torch.tensor(loss, dtype=torch.float64) - torch.tensor(float_loss, dtype=torch.float64)
        draws = torch.randint(len(kl), (2000, len(kl)), generator=torch.Generator().manual_seed(1))
        low, high = by_row[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        more_low, more_high = more[draws].mean(1).exp().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        perplexity = [float(torch.tensor(values).double().mean().exp()) for values in (loss, float_loss)]
        return {"kl": float(by_row.mean()), "kl_low": low, "kl_high": high, "perplexity": perplexity[0], "float_perplexity": perplexity[1],
                "ratio_low": more_low, "ratio_high": more_high}  # fmt: skip

    def point(self, name: str, make: Callable[[Path], tuple[Path, int]]) -> dict | None:
        """What `make` writes into a folder: where it is to be read, and how many bytes it weighs."""
        if name in self.results:
            return self.results[name]
        begin, folder = time.monotonic(), self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        try:
            read, weighs = make(folder)
        except Exception as error:  # noqa: BLE001: whatever a peer says, the others are measured
            print(f"{name}: left out: {type(error).__name__}: {error}", file=sys.stderr)
            return None
        seconds = time.monotonic() - begin
        self.results[name] = {"bytes": weighs, "seconds": seconds} | self.measured(read)
        shutil.rmtree(folder, ignore_errors=True)
        self.kept.write_text(json.dumps(self.results, indent=1))
        return self.results[name]


def payload(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    return total


# --- ours


def ours(bench: Bench, *flags: str, choices: str = CHOICES, scores: str = "", exchange_steps: int | None = None) -> Callable[[Path], tuple[Path, int]]:
    options = bench.options
    steps = options.exchange_steps if exchange_steps is None else exchange_steps
    needs_data = any(flag.startswith(("--budget", "--rounding", "--policy=dynamic")) for flag in flags)
    data = [f"--data={options.calibration}", f"--calibration-rows={options.calibration_rows}", "--held-out-rows=16",
            f"--exchange-rows={options.exchange_rows}", f"--sequence-length={options.length}"] if needs_data else []  # fmt: skip
    if any(flag.startswith("--budget") for flag in flags):
        kept = scores or ("scores.jsonl" if choices == CHOICES else "few-bits.scores.jsonl")
        data += [f"--formats={choices}", f"--scores={bench.work / kept}", f"--exchange-steps={steps}"]

    def make(folder: Path) -> tuple[Path, int]:
        limbeck("quantize", f"--model={options.model}", f"--output={folder}", "--dtype=float16", *flags, *data)
        return folder, payload(folder)

    return make


def permuted(bench: Bench, *flags: str) -> Callable[[Path], tuple[Path, int]]:
    """A budget by scores of which every module has those of another one, without exchanges to mend it."""

    def make(folder: Path) -> tuple[Path, int]:
        head, *rows = map(json.loads, (bench.work / "scores.jsonl").read_text().splitlines())
        order = torch.randperm(len(head["modules"]), generator=torch.Generator().manual_seed(3)).tolist()
        rows = [row for row in rows if "modules" in row]  # not what exchanges measured
        for row in rows:
            row["modules"] = [row["modules"][i] for i in order]
        (bench.work / "permuted.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [head, *rows]))
        return ours(bench, *flags, scores="permuted.jsonl", exchange_steps=0)(folder)

    return make


DISTIL = """[teacher]
model = {model}
dtype = bfloat16
[student]
model = {model}
dtype = bfloat16
train_codes = true
[precision]
{rules}
[data]
train = {train}
validation = {data}
batch_size = 8
sequence_length = {length}
[objective]
alpha = 1
[optim]
learning_rate = {rate}
schedule = cosine
warmup = 5 %
weight_decay = 0
[train]
steps = {steps} steps
"""


def distilled(bench: Bench, *flags: str, choices: str = CHOICES) -> Callable[[Path], tuple[Path, int]]:
    """The codes of a budget's mix, trained from the floats towards what the floats predict."""
    options = bench.options

    def make(folder: Path) -> tuple[Path, int]:
        mix, recipe, run = bench.work / "mix", bench.work / "distil.ini", folder / "run"
        shutil.rmtree(mix, ignore_errors=True)
        ours(bench, *flags, f"--json={bench.work / 'mix.json'}", choices=choices)(mix)
        modules = json.loads((bench.work / "mix.json").read_text())["result"]["modules"]
        rules = "\n".join(f"rule = student.{name} {one['format']}" for name, one in modules.items())
        recipe.write_text(DISTIL.format(model=options.model.resolve(), train=options.calibration.resolve(), data=options.data.resolve(), rules=rules,
                                        length=options.length, rate=options.distil_rate, steps=options.distil_steps))  # fmt: skip
        limbeck("train", recipe, f"--run={run}")
        return run / "final", payload(run / "final")

    return make


def our_ways(bench: Bench) -> dict[str, Callable]:
    by_rule = [f"--rule=model.{table} int8" for table in bench.tables]
    ways = {}
    for form in ("int8", "int4", "int4-g32", "int4-sym", "int4-sym-g32", "int3", "int3-g32", "int2", "int2-g32"):
        ways[form] = ours(bench, f"--quantize={form}", *by_rule)
        ways[f"{form}+compensated"] = ours(bench, f"--quantize={form}", *by_rule, "--rounding=compensated")
        if form[3] in "23":
            ways[f"{form}+learned"] = ours(bench, f"--quantize={form}", *by_rule, "--rounding=learned")
    ways["nf4"] = ours(bench, "--quantize=nf4")
    tags = TABLES[: len(bench.tables)]
    ways["static"] = ours(bench, "--policy=static", *tags)
    ways["static-int4-g32"] = ours(bench, "--policy=static", *tags, "--tag=attention int4-g32", "--tag=mlp int4-g32")
    ways["dynamic"] = ours(bench, "--policy=dynamic", *by_rule)
    for bits in BITS:
        ways[f"budget-{bits}"] = ours(bench, f"--budget={bits} bits")
        ways[f"budget-{bits}+compensated"] = ours(bench, f"--budget={bits} bits", "--rounding=compensated")
        ways[f"budget-{bits}+distilled"] = distilled(bench, f"--budget={bits} bits")
        ways[f"budget-{bits}-scores-alone"] = ours(bench, f"--budget={bits} bits", exchange_steps=0)
        ways[f"budget-{bits}-permuted"] = permuted(bench, f"--budget={bits} bits")
    for bits in FEW_BITS:
        few = CHOICES + FEWER
        for rounding in ("compensated", "learned"):
            ways[f"budget-{bits}+{rounding}"] = ours(bench, f"--budget={bits} bits", f"--rounding={rounding}", choices=few)
        ways[f"budget-{bits}+distilled"] = distilled(bench, f"--budget={bits} bits", choices=few)
    return ways


# --- theirs


def torchao_way(bench: Bench, form: str, linears: set[str]) -> Callable:
    def make(folder: Path) -> tuple[Path, int]:
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, dequantize_affine, quantize_affine

        weights, weighs = bench.model().state_dict(), 0
        for name, weight in weights.items():
            if name == "lm_head.weight" and "lm_head" not in bench.tables:
                continue
            if name not in linears:
                weights[name] = weight.half().float()
                weighs += 2 * weight.numel()
                continue
            block = (1, weight.shape[1] if form == "int8" else int(form.partition("-g")[2]))
            mapping, low, high = (MappingType.SYMMETRIC, -127, 127) if form == "int8" else (MappingType.ASYMMETRIC, 0, 15)
            scale, zero = choose_qparams_affine(weight, mapping, block, torch.int8, low, high, zero_point_dtype=torch.int8)
            scale = scale.half().float()
            codes = quantize_affine(weight, block, scale, zero, torch.int8, low, high)
            weights[name] = dequantize_affine(codes, block, scale, zero, torch.int8, low, high)
            weighs += weight.numel() if form == "int8" else weight.numel() // 2
            weighs += scale.numel() * 2 + (0 if form == "int8" else zero.numel())
        bench.float_folder(weights, folder)
        return folder, weighs

    return make


def llmcompressor_way(bench: Bench, scheme: str, group: int | None) -> Callable:
    def make(folder: Path) -> tuple[Path, int]:
        from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier

        model = bench.model()
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in bench.calibration]
        data = torch.utils.data.DataLoader(rows, batch_size=1)
        preset: QuantizationScheme = preset_name_to_scheme(scheme, ["Linear"])
        if group:
            preset.weights.group_size = group
        recipe = GPTQModifier(config_groups={"group_0": preset}, ignore=["lm_head"])
        oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(rows), max_seq_length=bench.options.length)
        model.half().save_pretrained(folder, save_compressed=True)
        return folder, payload(folder)

    return make


def auto_round_way(bench: Bench, bits: int, group: int, symmetric: bool) -> Callable:
    def make(folder: Path) -> tuple[Path, int]:
        from auto_round import AutoRound

        tokenizer = transformers.AutoTokenizer.from_pretrained(bench.options.model)
        rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in bench.calibration]
        tuned = AutoRound(bench.model(), tokenizer, bits=bits, group_size=group, sym=symmetric, iters=200, dataset=rows,
                          seqlen=bench.options.length, nsamples=len(rows), device_map="cpu", amp=False, batch_size=8)  # fmt: skip
        tuned.quantize_and_save(str(folder), format="auto_round")
        found = next(iter(folder.rglob("config.json"))).parent
        return found, payload(found)

    return make


def llama_cpp_way(bench: Bench, kind: int) -> Callable:
    """llama.cpp's own quantizer on the GGUF file that `limbeck export-gguf` writes of the floats, read by `limbeck import-gguf`."""

    def make(folder: Path) -> tuple[Path, int]:
        folder.mkdir()
        source, quantized = bench.work / "floats.gguf", folder / "quantized.gguf"
        if not source.exists():
            limbeck("export-gguf", f"--model={bench.floats}", f"--output={source}")
        code = "import ctypes, os, sys\n" + LLAMA_QUANTIZE
        subprocess.run([sys.executable, "-c", code, bench.options.llama_cpp, source, quantized, str(kind)], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        limbeck("import-gguf", f"--model={quantized}", f"--output={folder / 'floats'}", "--codes=floats", "--dtype=float32",
                f"--json={folder / 'said.json'}")  # fmt: skip
        types = json.loads((folder / "said.json").read_text())["result"]["types"]
        return folder / "floats", sum(row["stored_bytes"] for row in types)

    return make


# A child: llama.cpp ends the process where it refuses.
LLAMA_QUANTIZE = """
os.environ["GGML_BACKEND_PATH"] = ""
folder = os.path.dirname(sys.argv[1])
for name in ("libggml-base.so", "libggml-cpu.so", "libggml.so"):
    if os.path.exists(os.path.join(folder, name)): ctypes.CDLL(os.path.join(folder, name), ctypes.RTLD_GLOBAL)
llama = ctypes.CDLL(sys.argv[1])
class Params(ctypes.Structure):  # more than any version's llama_model_quantize_params
    _fields_ = [("threads", ctypes.c_int32), ("kind", ctypes.c_int32), ("rest", ctypes.c_char * 256)]
llama.llama_model_quantize_default_params.restype = Params
llama.llama_backend_init()
params = llama.llama_model_quantize_default_params()
params.kind = int(sys.argv[4])
llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
sys.exit(llama.llama_model_quantize(sys.argv[2].encode(), sys.argv[3].encode(), ctypes.byref(params)))
"""

def their_ways(bench: Bench) -> dict[str, Callable]:
    linears = {name for name in bench.model().state_dict() if name.endswith("_proj.weight")}
    ways = {f"torchao-{form}": torchao_way(bench, form, linears) for form in ("int8", "int4-g32", "int4-g64", "int4-g128")}
    ways |= {f"llmcompressor-{name}": llmcompressor_way(bench, *of) for name, of in LLMC.items()}
    ways |= {f"auto-round-{name}": auto_round_way(bench, *of) for name, of in AUTO_ROUND.items()}
    if bench.options.llama_cpp:
        ways |= {f"llama.cpp-{name}": llama_cpp_way(bench, kind) for name, kind in GGUF_TYPES.items()}
    return ways


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="token shards that decide")
    parser.add_argument("--data", type=Path, required=True, help="token shards that measure")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of points, or beginnings of them, with commas")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--calibration-rows", type=int, default=128)
    parser.add_argument("--exchange-rows", type=int, default=32)
    parser.add_argument("--exchange-steps", type=int, default=16)
    parser.add_argument("--distil-steps", type=int, default=150)
    parser.add_argument("--distil-rate", type=float, default=3e-5)
    parser.add_argument("--llama-cpp", help="libllama.so, beside its libggml*.so")
    return parser.parse_args(arguments)


def line(name: str, one: dict, values: int) -> str:
    return (f"| {name} | {one['bytes']} | {8 * one['bytes'] / values:.2f} | {4 * values / one['bytes']:.2f} | {one['perplexity']:.3f} | "
            f"{100 * (one['perplexity'] / one['float_perplexity'] - 1):+.2f} ({100 * (one['ratio_low'] - 1):+.2f} to {100 * (one['ratio_high'] - 1):+.2f}) | "
            f"{one['kl']:.6f} ({one['kl_low']:.6f} to {one['kl_high']:.6f}) | {one['seconds']:.0f} |")  # fmt: skip


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    bench = Bench(options)
    model = bench.model()
    values = sum(parameter.numel() for parameter in model.parameters())
    bench.tables = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    wanted = [name for name in options.only.split(",") if name]
    print("| way | bytes | bits a weight | times smaller than float32 | perplexity | more than floats, % | KL to floats | seconds |\n|---|---|---|---|---|---|---|---|")
    for name, make in (our_ways(bench) | their_ways(bench)).items():
        if wanted and not any(name.startswith(one) for one in wanted):
            continue
        one = bench.point(name, make)
        if one is None:
            continue
        print(line(name, one, values), flush=True)
        if name in our_ways(bench):
            continue
        ours_at = f"ours at {name}"
        few = 8 * one["bytes"] < LEAST_BITS * values
        found = bench.point(ours_at, ours(bench, f"--budget={one['bytes']} bytes", "--rounding=compensated", choices=CHOICES + FEWER if few else CHOICES))
        if found is not None:
            better = "better" if found["kl"] < one["kl"] else "WORSE"
            print(line(f"{ours_at}: {better}", found, values), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
