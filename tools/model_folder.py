"""A model's folder that is made of another one's: its config, the files that stay as they are, and nothing when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import guarded_work
from guarded_work import WeightsFault, one_line

ADVICE = "wanted the folder of a Hugging Face model"


def reading(path: Path, memory: int) -> None:
    guarded_work.step("reading it", path, 60, guarded_work.GIB + memory, ADVICE, guarded_work.WEIGHTS)


def read_config(path: Path) -> dict:
    reading(path, path.stat().st_size * 100 if path.exists() else 0)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsFault(f"{path}: no JSON ({one_line(error, 100)}): {ADVICE}") from None
    if not isinstance(config, dict):
        raise WeightsFault(f"{path}: no JSON object: {ADVICE}")
    return config


def copy_files(files: Iterable[Path], out: Path) -> None:
    """Those that are there."""
    for path in files:
        if path.is_file():
            guarded_work.step("copying it", path, 600, guarded_work.GIB, "look at the disk", guarded_work.WEIGHTS)
            shutil.copyfile(path, out / path.name)


def write_weights(tensors: dict, target: Path) -> None:
    from safetensors.torch import save_file
    try:
        save_file(tensors, target, metadata={"format": "pt"})
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001: names or dtypes that the format lacks, or the disk, which it tells as text
        if answer := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(answer[1]), os.strerror(int(answer[1])), str(target)) from None
        raise WeightsFault(f"{target}: cannot be written: {type(error).__name__}: {one_line(error, 200)}") from None


def write_config(out: Path, config: dict) -> None:
    """Last: a folder that has it is whole."""
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def made(tool: str, out: Path, work: Callable[[], None]) -> int:
    """The exit code of the work that makes the folder `out`; of work that failed nothing stays."""
    absent = guarded_work.absent_folders([out])

    def tidy() -> None:
        if out in absent:
            shutil.rmtree(out, ignore_errors=True)
        guarded_work.remove_empty(absent)

    return guarded_work.answered(tool, work, tidy)
