"""Runs the `limbeck` program as a user does: one process a call, tensors in and out through safetensors files."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[2]
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class LimbeckError(RuntimeError):
    """The program ended with another code than 0; the message holds the command and what it printed."""


class Limbeck:
    """The built program. One instance serves a whole test session; it keeps no state between calls."""

    def __init__(self, threads: int = 2, timeout: float = 120.0):
        build = Path(os.environ.get("LIMBECK_BUILD", "build/release"))
        self._program = (build if build.is_absolute() else REPOSITORY / build) / "bin" / "limbeck"
        self._threads = threads
        self._timeout = timeout
        if not self._program.is_file():
            raise LimbeckError(
                f"[limbeck] no program at {self._program}: build it (cmake --build --preset release) "
                "or set LIMBECK_BUILD to the build folder"
            )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [str(self._program), *arguments, "--threads", str(self._threads), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=self._timeout, check=False)
        if done.returncode != 0:
            raise LimbeckError(f"exit {done.returncode}: {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done

    def forward(
        self,
        model: Path,
        tensors: dict[str, torch.Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        hidden: bool = False,
        gradients: bool = False,
        pooling: str | None = None,
        adapter: Path | None = None,
        quantize: str | None = None,
    ) -> dict[str, torch.Tensor]:
        flags = ["--dtype", DTYPE_NAMES[dtype]]
        flags += ["--hidden"] if hidden else []
        flags += ["--gradients"] if gradients else []
        flags += ["--pooling", pooling] if pooling else []
        flags += ["--adapter", str(adapter)] if adapter else []
        flags += ["--quantize", quantize] if quantize else []
        return self._through_files("forward", model, "--input", tensors, flags)

    def generate(
        self, model: Path, input_ids: torch.Tensor, attention_mask: torch.Tensor, *flags: str, new_tokens: int = 64
    ) -> torch.Tensor:
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self._through_files("generate", model, "--prompts", tensors, ["--max-new-tokens", str(new_tokens), *flags])[
            "tokens"
        ]

    def generate_from_ids(self, model: Path, ids: list[int], *flags: str, new_tokens: int = 64) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.safetensors"
            self.run(
                "generate", "--model", str(model), "--prompt-ids", ",".join(map(str, ids)),
                "--output", str(output), "--max-new-tokens", str(new_tokens), *flags,
            )  # fmt: skip
            return load_file(output)["tokens"]

    def _through_files(
        self, command: str, model: Path, input_flag: str, tensors: dict[str, torch.Tensor], flags: list[str]
    ) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source)
            self.run(command, "--model", str(model), input_flag, str(source), "--output", str(output), *flags)
            return load_file(output)
