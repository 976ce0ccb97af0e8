#!/usr/bin/env python3
"""bench_resnet_bk.py: what ResNet-BK learns and costs beside a Llama of as many parameters.

  bench_resnet_bk.py --data DATA --work DIR [--teacher MODEL] [--seeds 0,1,2] [--steps 600]

DATA is what tools/prepare_data.py makes (train, validation, tokenizer). Tables, and DIR/lengths.html with a picture of the second:
  learning  held-out perplexity after equal steps of equal batches, over the seeds: a Llama; ResNet-BK with 32 matrices a layer that reach far,
            with 8 that do not, with 1, as its original has, and with a potential held at 0, where no token sees another (what mixing is
            worth). With --teacher also students of it, a Llama and the first ResNet-BK: by logits, and by what its token mixers give for a
            quarter of the steps and by logits for the rest.
  lengths   time and memory of training a token, at 16,384 tokens an update in rows of 512 to 16,384.
  generation  the time of a token behind texts of 1,024 to 32,768, as the difference of 513 and 1 generated ones, the least of five.
Runs that are there are not made again. It uses the machine alone: two jobs at once tell nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
from report_numbers import bytes_text, number  # noqa: E402

LIMBECK = Path(os.environ.get("LIMBECK_BUILD", Path(__file__).parents[1] / "build" / "release")) / "bin" / "limbeck"
TOKENS = 16384  # an update of the second table
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}  # fmt: skip
BK = {"architectures": ["ResNetBKForCausalLM"], "model_type": "resnet_bk", "hidden_size": 128, "intermediate_size": 340, "num_hidden_layers": 4,
      "num_experts": 0, "causal": True, "bk_heads": 8, "bk_z": 1.0, "bk_clamp": 3.0}  # fmt: skip
# A lower z and potentials that begin within the band, not at its edge: what a token does fades later.
FAR = {"bk_heads": 32, "intermediate_size": 304, "bk_z": 0.3, "bk_bias_low": 0.3, "bk_bias_high": 2.9}
UNMIXED = 1e-6  # the least that config.json may bound the potential by: the matrix is then the same for every text
MODELS = {"Llama": LLAMA, "ResNet-BK, 32 matrices a layer that reach far": BK | FAR, "ResNet-BK, 8 matrices a layer": BK,
          "ResNet-BK, 1 matrix a layer": BK | {"bk_heads": 1, "intermediate_size": 346},
          "ResNet-BK, nothing mixed": BK | {"bk_clamp": UNMIXED}}  # fmt: skip
RECIPE = """[student]
init = random
dtype = float32
[data]
batch_size = 8
sequence_length = 128
[optim]
learning_rate = 3e-3
schedule = cosine
warmup = 10 %
weight_decay = 0.01
[checkpoint]
keep = 1
[eval]
batches = 200
"""
LOGITS = ("--objective.alpha=0.9", "--objective.temperature=1")
MIXERS = ("--objective.alpha=0", "--objective.ce_weight=0", "--objective.mixer_weight=1")


def in_a_path(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.options, self.work = options, options.work
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "recipe.ini").write_text(RECIPE)
        self.vocabulary = json.loads((options.data / "train" / "manifest.json").read_text())["tokenizer"]["vocabulary"]

    def model(self, name: str, positions: int) -> Path:
        folder = self.work / "models" / f"{in_a_path(name)}-{positions}"
        folder.mkdir(parents=True, exist_ok=True)
        config = MODELS[name] | {"vocab_size": self.vocabulary, "max_position_embeddings": positions, "tie_word_embeddings": False,
                                 "bos_token_id": None, "eos_token_id": 0, "torch_dtype": "float32"}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        for file in (self.options.data / "tokenizer").iterdir():
            shutil.copy(file, folder)
        return folder

    def train(self, run: Path, *flags: object) -> dict:
        said = run.with_suffix(".json")
        if not said.exists():
            shutil.rmtree(run, ignore_errors=True)
            data = [f"--data.train={self.options.data / 'train'}", f"--data.validation={self.options.data / 'validation'}"]
            subprocess.run(list(map(str, [LIMBECK, "train", self.work / "recipe.ini", f"--run={run}", f"--json={said}", "--quiet", *data, *flags])),
                           check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        return json.loads(said.read_text())["result"]

    def learned(self, name: str, way: str, seed: int) -> dict:
        steps, alone = self.options.steps, [f"--student.model={self.model(name, 128)}", f"--seed={seed}"]
        run = self.work / f"{in_a_path(name)}-{way}-{seed}"
        teacher = [] if way == "alone" else [f"--teacher.model={self.options.teacher}", "--teacher.dtype=float32"]
        if way == "mixers":
            first = run.with_name(run.name + "-first")
            self.train(first, *alone, *teacher, *MIXERS, f"--train.steps={steps // 4} steps")
            alone = [f"--student.model={first / 'final'}", "--student.init=weights", f"--seed={seed}"]
            steps -= steps // 4
        objective = ["--objective.alpha=0"] if way == "alone" else LOGITS
        return self.train(run, *alone, *teacher, *objective, f"--train.steps={steps} steps", f"--eval.every={steps}")


def perplexity(run: dict) -> float:
    return run["evaluation"]["perplexity"]


def learning(bench: Bench) -> None:
    print("| model | trained | parameters | perplexity, mean | each seed | seconds |\n|---|---|---|---|---|---|")
    ways = [(name, "alone", "alone") for name in MODELS]
    if bench.options.teacher:
        ways += [(name, "logits", "by a teacher's logits") for name in list(MODELS)[:2]]
        ways += [(list(MODELS)[1], "mixers", "by its mixers, then its logits")]
    for name, way, said in ways:
        runs = [bench.learned(name, way, seed) for seed in bench.options.seeds]
        found = [perplexity(run) for run in runs]
        print(f"| {name} | {said} | {runs[0]['evaluation']['student']['parameters']:,} | {statistics.mean(found):.1f} | "
              f"{', '.join(f'{one:.1f}' for one in found)} | {statistics.mean(run['seconds'] for run in runs):.0f} |", flush=True)  # fmt: skip


def lengths(bench: Bench) -> None:
    names, found = list(MODELS)[:2], {}
    print("| tokens a row | " + " | ".join(f"{name}: microseconds a token | peak, bytes a token" for name in names) + " |")
    print("|---" * (1 + 2 * len(names)) + "|")
    for length in bench.options.lengths:
        cells = []
        for name in names:
            run = bench.work / f"length-{in_a_path(name)}-{length}"
            result = bench.train(run, f"--student.model={bench.model(name, max(bench.options.lengths))}", "--objective.alpha=0", "--train.steps=4 steps",
                                 f"--data.sequence_length={length}", f"--data.batch_size={TOKENS // length}")  # fmt: skip
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            seconds = min(line["seconds"] for line in lines if line["phase"] == "train")
            found[name, length] = (seconds / TOKENS * 1e6, result["peak_bytes"] / TOKENS)
            cells.append("{:.1f} | {:.0f}".format(*found[name, length]))
        print(f"| {length} | {' | '.join(cells)} |", flush=True)

    def drawn(title: str, of: int, text) -> str:
        lines = [charts.Line(name, i, [(float(n), found[name, n][of]) for n in bench.options.lengths]) for i, name in enumerate(names)]
        return charts.figure(title, lines, text, "tokens a row")

    keys = "".join(f'<li><i class="key s{i}"></i>{name}</li>' for i, name in enumerate(names))
    page = charts.document("ResNet-BK beside attention", f'<ul class="legend">{keys}</ul><div class="charts">'
                           f"{drawn('microseconds a token, forward and backward', 0, number)}"
                           f"{drawn('bytes a token at the peak', 1, bytes_text)}</div>")  # fmt: skip
    (bench.work / "lengths.html").write_text(page)
    print(bench.work / "lengths.html")


def generation(bench: Bench) -> None:
    names, texts, new = list(MODELS)[:2], [1024, 4096, 8192, 16384, 32768], 512
    print("| tokens before | " + " | ".join(f"{name}: ms a token" for name in names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for length in texts:
        prompt, cells = bench.work / "prompt.safetensors", []
        save_file({"input_ids": torch.arange(length)[None] % bench.vocabulary, "attention_mask": torch.ones(1, length, dtype=torch.int64)}, prompt)
        for name in names:
            run = bench.work / f"generation-{in_a_path(name)}"
            bench.train(run, f"--student.model={bench.model(name, max(texts) + 2 * new)}", "--objective.alpha=0", "--train.steps=1 steps")

            def seconds(count: int, run: Path = run, prompt: Path = prompt) -> float:
                begin = time.monotonic()
                subprocess.run([LIMBECK, "generate", f"--model={run / 'final'}", f"--prompts={prompt}", f"--max-new-tokens={count}", "--ignore-eos",
                                f"--output={bench.work / 'tokens.safetensors'}", "--quiet"], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
                return time.monotonic() - begin

            both = [(seconds(1), seconds(new + 1)) for _ in range(5)]
            cells.append(f"{(min(many for _, many in both) - min(one for one, _ in both)) / new * 1e3:.2f}")
        print(f"| {length} | {' | '.join(cells)} |", flush=True)


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="an attention model of the same tokenizer")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lengths", type=numbers, default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--only", choices=["learning", "lengths", "generation"])
    options = parser.parse_args(arguments)
    bench = Bench(options)
    for table in (learning, lengths, generation):
        if options.only in (None, table.__name__):
            table(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
