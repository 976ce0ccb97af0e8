"""Runs the `limbeck` program as a user does: one process a call, tensors in and out through safetensors files."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
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


# Read while libraries are loaded, so only a program that was loaded with them is what they ask for.
LOADING = ("ASAN_", "ATEN_", "CUDA_", "GOMP_", "KMP_", "LD_", "LSAN_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "TORCH_", "UBSAN_")


def build_folder() -> Path:
    build = Path(os.environ.get("LIMBECK_BUILD", "build/release"))
    return build if build.is_absolute() else REPOSITORY / build


class ForkedProgram:
    """The program, loaded once and forked for one run after the other, as tests/trainer/forked_program.cpp says."""

    def __init__(self, environment: dict[str, str] | None = None):
        program = build_folder() / "bin" / "forked_program"
        assert program.is_file(), f"{program}: not built: cmake --build {build_folder()} --target forked_program"
        self.environment = dict(os.environ) if environment is None else dict(environment)
        self.idle = True
        self._server = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment)
        self._said = b""

    def start(self, **request) -> ForkedRun:
        assert self.idle, "one run at a time"
        self.idle = False
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        return ForkedRun(self, self.answer(None)["process"])

    def run(self, **request) -> dict:
        run = self.start(**request)
        run.wait()
        return run.outcome

    def answer(self, timeout: float | None) -> dict | None:
        """The next line, or None when none comes in time."""
        deadline = time.monotonic() + (timeout or 0)
        while b"\n" not in self._said:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._server.stdout], [], [], left)[0]:
                return None
            part = os.read(self._server.stdout.fileno(), 65536)
            if not part:
                raise LimbeckError(f"forked_program itself ended: exit {self._server.wait(30)}")
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        if not self.idle:
            self._server.kill()
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()


class ForkedRun:
    """What a Popen is, of one run of a ForkedProgram; `outcome` has what else is known at its end."""

    def __init__(self, program: ForkedProgram, pid: int):
        self._program, self.pid = program, pid
        self.outcome: dict | None = None

    @property
    def returncode(self) -> int | None:
        return None if self.outcome is None else -self.outcome["signal"] or self.outcome["code"]

    def poll(self, timeout: float | None = 0) -> int | None:
        if self.outcome is None:
            self.outcome = self._program.answer(timeout)
            self._program.idle = self.outcome is not None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired("limbeck", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_programs: list[ForkedProgram] = []  # of this pytest process
_choosing = threading.Lock()


def loaded_with(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(LOADING)}


def fork_program(arguments, environment: dict[str, str], folder, out: str, err: str, seconds: float = 3600,
                 program: str = "limbeck") -> ForkedRun:  # fmt: skip
    """A run of the program, forked from one that was loaded in such an environment."""
    with _choosing:
        wanted = loaded_with(environment)
        loaded = next((one for one in _programs if one.idle and loaded_with(one.environment) == wanted), None)
        if loaded is None:
            loaded = ForkedProgram(environment)
            _programs.append(loaded)
            atexit.register(loaded.close)
        was = loaded.environment
        changes = {name: None for name in was if name not in environment}
        changes |= {name: value for name, value in environment.items() if was.get(name) != value}
        return loaded.start(program=program, arguments=[str(word) for word in arguments], environment=changes,
                            folder=str(folder or os.getcwd()), stdout=out, stderr=err, seconds=seconds)  # fmt: skip


def name_of(file) -> str:
    """Another process of ours opens this file by this name."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def run_program(*arguments, cwd=None, env: dict[str, str] | None = None, timeout: float = 120.0,
                program: str = "limbeck") -> subprocess.CompletedProcess:  # fmt: skip
    """subprocess.run of the program, stdin empty, both outputs captured as text, but forked from one that is loaded.

    What is about processes themselves (signals, limits, the loading of libraries) starts a process of its own.
    """
    command = [str(build_folder() / "bin" / program), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        run = fork_program(arguments, dict(os.environ) if env is None else env, cwd, name_of(out), name_of(err), timeout, program)
        run.wait()
        said = out.read(), err.read()
        if run.outcome["timed_out"]:
            raise subprocess.TimeoutExpired(command, timeout, *said)
        return subprocess.CompletedProcess(command, run.returncode, *said)


class LimbeckError(RuntimeError):
    """The program ended with another code than 0; the message holds the command and what it printed."""


class Limbeck:
    """The built program. One instance serves a whole test session; it keeps no state between calls."""

    def __init__(self, threads: int = 1, timeout: float = 120.0):
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
