"""What the cases of abuse_cases.py are made from: well-formed models of every family, adapters, data, runs, tokenizers."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import abuse_tokenizers
import google_crc32c
import model_zoo
import token_rows
import torch
from limbeck_runner import Limbeck
from safetensors.torch import save_file
from training_work import Work

# Left out: what makes a case long by being obeyed, what names files beside the case, and ranks that would wait for others.
NOT_MUTATED = {"run", "json", "plugin", "output", "train.steps", "help", "threads"} | {
    f"parallel.{name}" for name in ("rank", "world_size", "local_rank", "processes_per_node", "master")
}


@dataclass
class Case:
    arguments: list[str]
    finite: Path | None = None  # a file that must hold finite numbers only, where the program says it is done
    codes: set[int] | None = None  # where one answer only is right
    environment: dict[str, str] = field(default_factory=dict)


def sealed_manifest(path: Path, value: dict) -> None:
    """A manifest of data with its last key, its checksum, right again."""
    value.pop("crc32c", None)
    body = json.dumps(value, indent=2).removesuffix("\n}") + ",\n"
    path.write_text(f'{body}  "crc32c": "{google_crc32c.value(body.encode()):08x}"\n}}\n')


class Stock:
    """Made once a session; the cases copy from it."""

    def __init__(self, folder: Path, limbeck: Limbeck):
        self.folder = folder
        self.families = [family.name for family in model_zoo.FAMILIES]
        for family in model_zoo.FAMILIES:
            model_zoo.write_model(family, folder / "zoo" / family.name)
        ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(1))
        save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, folder / "input.safetensors")
        (folder / "work").mkdir()
        self.work = Work(folder / "work", limbeck)
        short = dict(train__steps="4 steps", checkpoint__every=2, data__batch_size=2)
        for kind in ("none", "lora", "dora", "ia3", "npt"):
            self.work.train(kind, threads=1, adapter__kind=kind, **short)
        self.recipe = (folder / "work" / "none.ini").read_text()
        self.masked_data = folder / "masked"
        self.masked_recipe = self._masked()
        self.tokenizers = abuse_tokenizers.texts()
        self.gguf = folder / "model.gguf"
        limbeck.run("export-gguf", f"--model={folder / 'zoo' / self.families[0]}", "--without-tokenizer", "--quantize=int8",
                    "--rule=model.layers.*.mlp.down_proj float16", f"--output={self.gguf}")  # fmt: skip
        self.spellings = [line.split()[0] for line in limbeck.run("list", "aliases").stdout.splitlines()[2:]]
        self.spellings.remove("output_dir")
        self.options = options_of(Path(__file__).parents[1] / "golden" / "options.txt")

    def _masked(self) -> Path:
        """Data and a recipe of a masked language model, whose manifest lists ids."""
        vocabulary = model_zoo.VOCABULARY
        token_rows.write(self.masked_data, token_rows.random_documents(60, 6, 20, vocabulary, seed=7), vocabulary)
        path = self.masked_data / "manifest.json"
        value = json.loads(path.read_text())
        value["tokenizer"] |= {"mask": 4, "special": "0-4", "continuing": "9,200-300,516"}
        sealed_manifest(path, value)
        keys = dict(teacher__model=self.folder / "zoo" / "bert-masked", student__model=self.folder / "zoo" / "distilbert-masked",
                    data__train=self.masked_data, data__validation=self.masked_data, data__masking="whole_word",
                    data__batch_size=2, train__steps="2 steps", objective__temperature=None)  # fmt: skip
        return self.work.recipe("masked", **keys)

    def run(self, kind: str) -> Path:
        return self.folder / "work" / f"run-{kind}"


def options_of(path: Path) -> dict[str, list[str]]:
    """The flags of each command and, as "recipe", the keys, from the frozen inventory of the option table."""
    out: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("--"):
            name = line.split()[0].removeprefix("--")
            if name not in NOT_MUTATED:
                command.append(name)
        elif line.strip():
            command = out.setdefault(line.split()[1] if line.startswith("limbeck ") else line.strip(), [])
    return out


KINDS: dict[str, Callable[[Stock, Path, random.Random], Case]] = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


def copied_model(source: Path, to: Path, own_weights: bool) -> Path:
    to.mkdir()
    for path in source.iterdir():
        if own_weights or path.suffix == ".json":
            shutil.copy(path, to / path.name)
        else:
            os.link(path, to / path.name)
    return to
