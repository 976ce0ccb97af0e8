"""What `limbeck` predicts, for the scripts here that hold it against what others predict from the same folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LIMBECK = Path(os.environ.get("LIMBECK_BUILD", Path(__file__).parents[2] / "build" / "release")) / "bin" / "limbeck"


def limbeck(*words: object) -> None:
    subprocess.run([str(LIMBECK), *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def rows_of(folder: Path, count: int, length: int) -> torch.Tensor:
    """The first rows of token shards, documents end to end."""
    ids = torch.cat([load_file(shard)["input_ids"].long().flatten() for shard in sorted(folder.glob("shard-*.safetensors"))])
    return ids[: count * length].reshape(count, length)


def greedy_tokens(folder: Path, prompt: list[int], count: int, work: Path) -> list[int]:
    limbeck("generate", f"--model={folder}", "--dtype=float32", f"--prompt-ids={','.join(map(str, prompt))}",
            f"--max-new-tokens={count}", "--ignore-eos", f"--json={work / 'said.json'}")  # fmt: skip
    return json.loads((work / "said.json").read_text())["result"]["tokens"][0][-count:]


def logits_of(folder: Path, rows: torch.Tensor, work: Path) -> torch.Tensor:
    """In float32, [rows, length, vocabulary]."""
    save_file({"input_ids": rows}, work / "ids.safetensors")
    limbeck("forward", f"--model={folder}", "--dtype=float32", f"--input={work / 'ids.safetensors'}", f"--output={work / 'logits.safetensors'}")
    logits = load_file(work / "logits.safetensors")["logits"]
    (work / "logits.safetensors").unlink()
    return logits
