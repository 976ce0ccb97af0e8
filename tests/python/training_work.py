"""A folder with a tiny teacher, a tiny student, data and recipes, and the runs made from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from limbeck_runner import Limbeck, LimbeckError
from safetensors.torch import load_file

import token_rows

VOCABULARY = 211
LENGTH, ROWS = 24, 4


def llama(hidden: int, layers: int, seed: int, vocabulary: int = VOCABULARY) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A teacher that has opinions: as it comes, every distribution is nearly uniform and the KL nearly zero.
            if parameter.dim() > 1:
                parameter.mul_(3.0 if "lm_head" in name or "embed" in name else 1.5)
    return model


def saved(model: transformers.PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model.to(dtype).save_pretrained(folder)
    model.float()
    return folder


class Work:
    """A folder with a teacher, a student, data and recipes, and the runs made from them."""

    def __init__(self, folder: Path, limbeck: Limbeck):
        self.folder, self.limbeck = folder, limbeck
        self.documents = token_rows.random_documents(400, 6, LENGTH, VOCABULARY, seed=5)
        token_rows.write(folder / "train", self.documents, VOCABULARY)
        self.held_out = token_rows.random_documents(40, 6, LENGTH, VOCABULARY, seed=6)
        token_rows.write(folder / "validation", self.held_out, VOCABULARY)
        self.teacher, self.student = llama(64, 3, seed=1), llama(32, 2, seed=2)
        saved(self.teacher, folder / "teacher")
        saved(self.student, folder / "student")

    def recipe(self, name: str = "recipe", **keys) -> Path:
        values = {
            "teacher.model": self.folder / "teacher",
            "student.model": self.folder / "student",
            "data.train": self.folder / "train",
            "data.validation": self.folder / "validation",
            "data.packing": "padded",
            "data.batch_size": ROWS,
            "data.sequence_length": LENGTH,
            "data.shuffle": "no",
            "objective.alpha": 0.5,
            "objective.temperature": 2,
            "optim.learning_rate": 1e-3,
            "optim.weight_decay": 0.01,
            "optim.schedule": "cosine",
            "optim.warmup": "5 steps",
            "train.steps": "50 steps",
            **{key.replace("__", "."): value for key, value in keys.items()},
        }
        sections: dict[str, list[str]] = {}
        for key, value in values.items():
            if value is None:
                continue
            section, _, name_in_section = key.rpartition(".")
            sections.setdefault(section, []).append(f"{name_in_section} = {value}")
        text = "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
        path = self.folder / f"{name}.ini"
        path.write_text(text)
        return path

    def train(self, name: str, *flags: str, threads: int = 1, **keys) -> "Run":
        recipe, run = self.recipe(name, **keys), self.folder / f"run-{name}"
        limbeck = Limbeck(threads=threads, timeout=600)
        limbeck.run("train", str(recipe), "--run", str(run), "--json", str(self.folder / f"{name}.json"), *flags)
        return Run(run, self.folder / f"{name}.json", recipe)


def refused_before_anything_runs(work: Work, command: str, keys: dict, message: str, code: int = 2) -> None:
    recipe, run = work.recipe("refused", **keys), work.folder / "refused"
    with pytest.raises(LimbeckError, match=f"exit {code}") as failure:
        work.limbeck.run(command, str(recipe), *([f"--run={run}"] if command == "train" else []))
    print(failure.value)
    assert message in str(failure.value)
    assert not list(run.glob("metrics*")), "it began to train"


class Run:
    def __init__(self, folder: Path, result: Path, recipe: Path):
        self.folder, self.recipe = folder, recipe
        self.result = json.loads(result.read_text())["result"]
        self.lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def series(self, name: str, phase: str = "train") -> list[float]:
        return [line[name] for line in self.lines if line["phase"] == phase]


MEASURED = {"seconds", "tokens_per_s", "peak_bytes", "rank_seconds_fastest", "rank_seconds_slowest", "slowest_rank",
            "straggler_score", "communication_hidden", "joules", "joules_cpu", "joules_cuda"}  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """All that a run computed, and nothing that it measured: equal outcomes are equal bits."""

    weights: dict[str, torch.Tensor]
    lines: list[dict]  # of metrics.jsonl, checkpoints left out
    state: dict[str, torch.Tensor]  # of the newest checkpoint: every tensor of model and optimizer, joined over ranks

    @staticmethod
    def of(run: Path) -> "Outcome":
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        computed = [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]
        return Outcome(
            load_file(next((run / "final").glob("*model.safetensors"))),  # or adapter_model.safetensors
            [line for line in computed if line["phase"] != "checkpoint"],
            joined_state(newest_checkpoint(run)),
        )

    def differences(self, other: "Outcome") -> list[str]:
        found = [name for name in self.weights if not torch.equal(self.weights[name], other.weights[name])]
        found += [f"state {name}" for name in self.state if not torch.equal(self.state[name], other.state.get(name, torch.empty(0)))]
        if self.lines != other.lines:
            pairs = [(a, b) for a, b in zip(self.lines, other.lines) if a != b]
            found.append(f"{len(self.lines)} and {len(other.lines)} lines, first difference {pairs[:1]}")
        return found


def checkpoints(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def newest_checkpoint(run: Path) -> Path:
    return checkpoints(run)[-1]


def joined_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every logical tensor of a checkpoint as one flat tensor, by "model NAME" and "optim NAME"."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for record in manifest["files"]:
        if not record["file"].endswith(".safetensors"):
            continue
        tensors, kind = load_file(checkpoint / record["file"]), record["file"].split("-")[0]
        for chunk in record["chunks"]:
            parts.setdefault(f"{kind} {chunk['name']}", []).append((chunk["begin"], tensors[chunk["name"]].flatten()))
    return {name: torch.cat([part for _, part in sorted(found, key=lambda x: x[0])]) for name, found in parts.items()}
