"""Runs the `limbeck` program as a user does: one process a call, tensors in and out through safetensors files."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import threading
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


# Read while libraries are loaded, so a program that was loaded without them is not what they ask for.
LOADING = ("ASAN_", "ATEN_", "CUDA_", "GOMP_", "KMP_", "LD_", "LSAN_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "TORCH_", "UBSAN_")


def build_folder() -> Path:
    build = Path(os.environ.get("LIMBECK_BUILD", "build/release"))
    return build if build.is_absolute() else REPOSITORY / build


class ForkedProgram:
    """The program, loaded once and forked for each run, as tests/trainer/forked_program.cpp says."""

    def __init__(self, **more: str):
        program = build_folder() / "bin" / "forked_program"
        assert program.is_file(), f"{program}: not built: cmake --build {build_folder()} --target forked_program"
        self.environment = dict(os.environ) | more
        self._one_by_one = threading.Lock()
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment)

    def changes_to(self, environment: dict[str, str]) -> dict[str, str | None]:
        """What makes the program's environment this one."""
        return {name: None for name in self.environment if name not in environment} | {
            name: value for name, value in environment.items() if self.environment.get(name) != value
        }

    def run(self, **request) -> dict:
        with self._one_by_one:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise LimbeckError(f"forked_program itself ended: exit {self._process.wait(30)}, asked for {request}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@functools.cache
def forked_program() -> ForkedProgram:
    """One for all of a pytest process; it ends when its standard input does."""
    return ForkedProgram()


def run_program(*arguments, cwd=None, env: dict[str, str] | None = None, timeout: float = 120.0) -> subprocess.CompletedProcess:
    """subprocess.run of the program, stdin empty, both outputs captured as text, but forked from one that is loaded.

    What is about processes themselves (signals, ranks, limits, the loading of libraries) starts a process of its own.
    """
    command = [str(build_folder() / "bin" / "limbeck"), *map(str, arguments)]
    changes = forked_program().changes_to(dict(os.environ) if env is None else env)
    if any(name.startswith(LOADING) for name in changes):
        return subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout, check=False)  # fmt: skip
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        out_name, err_name = (f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err))
        ended = forked_program().run(arguments=command[1:], environment=changes, folder=str(cwd or os.getcwd()), stdout=out_name,
                                     stderr=err_name, seconds=timeout)  # fmt: skip
        said = out.read(), err.read()
    if ended["timed_out"]:
        raise subprocess.TimeoutExpired(command, timeout, *said)
    return subprocess.CompletedProcess(command, -ended["signal"] if ended["signal"] else ended["code"], *said)


class LimbeckError(RuntimeError):
    """The program ended with another code than 0; the message holds the command and what it printed."""


class Limbeck:
    """The built program. One instance serves a whole test session; it keeps no state between calls."""

    def __init__(self, threads: int = 2, timeout: float = 120.0):
        self._program = build_folder() / "bin" / "limbeck"
        self._threads = threads
        self._timeout = timeout
        if not self._program.is_file():
            raise LimbeckError(
                f"[limbeck] no program at {self._program}: build it (cmake --build --preset release) "
                "or set LIMBECK_BUILD to the build folder"
            )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        done = run_program(*arguments, "--threads", self._threads, "--quiet", timeout=self._timeout)
        if done.returncode != 0:
            raise LimbeckError(f"exit {done.returncode}: {' '.join(done.args)}\n{done.stdout}{done.stderr}")
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
