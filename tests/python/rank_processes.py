"""Real processes of `limbeck train` as ranks of one run, on the loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from limbeck_runner import Limbeck, fork_program, name_of

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Ended:
    """How every rank ended: exit codes and standard errors, by rank."""

    codes: list[int]
    errors: list[str]
    seconds: float

    def well(self) -> "Ended":
        assert all(code == 0 for code in self.codes), "\n".join(
            f"rank {rank}: exit {code}\n{text}" for rank, (code, text) in enumerate(zip(self.codes, self.errors))
        )
        return self

    def said_once(self, code: int, speaker: int = 0) -> str:
        """All ended with this code, and the speaker alone said why, in this line."""
        assert self.codes == [code] * len(self.codes), "\n".join(self.errors)
        assert [bool(text) for text in self.errors] == [rank == speaker for rank in range(len(self.errors))], self.errors
        [line] = self.errors[speaker].splitlines()
        assert line.startswith("limbeck: "), line
        print(line)
        return line


class Ranks:
    """`size` processes of `limbeck train RECIPE FLAGS`; size 1 is one process without a launcher.

    By rank, where given: `per_rank` are more flags, `variables` more environment, `before` words in front of the program.
    They are forked from programs that are loaded, which is a third of a short run of ranks, unless `started`: then each is
    loaded as a user's is, for what is about processes, or about what happens while they start.
    """

    def __init__(self, size: int, recipe: Path, *flags: str, program: Path | None = None, per_rank=None, env=None,
                 variables=None, before=None, started: bool = False):  # fmt: skip
        started = started or bool(program or before)
        program = program or Limbeck()._program
        base = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES} | (env or {})
        self.port = free_port()
        self.began = time.monotonic()
        self.processes, self.errors = [], []
        for rank in range(size):
            own = dict(base)
            if size > 1:
                own |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}  # fmt: skip
            own |= variables(rank) if variables else {}
            command = [*(before(rank) if before else []), str(program), "train", str(recipe), "--threads=1", *flags]
            command += per_rank(rank) if per_rank else []
            # A file and no pipe: a rank that says much must not stand still until somebody reads it.
            self.errors.append(tempfile.TemporaryFile(mode="w+"))
            self.processes.append(
                subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=self.errors[-1]) if started
                else fork_program(command[1:], own, None, "/dev/null", name_of(self.errors[-1]))
            )  # fmt: skip

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def signal(self, rank: int, number: int = signal.SIGKILL) -> None:
        self.processes[rank].send_signal(number)

    def name(self, rank: int) -> str:
        """How messages name a rank."""
        return f"rank {rank} (host {socket.gethostname()}, process {self.processes[rank].pid})"

    def end_of(self, rank: int, timeout: float) -> tuple[int, str]:
        """Exit code and standard error of a rank that ends within `timeout` seconds."""
        self.processes[rank].wait(timeout=timeout)
        return self.processes[rank].returncode, self.texts()[rank]

    def end(self, timeout: float = 300) -> Ended:
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as expired:
            for process in self.processes:
                process.kill()
                process.wait()
            raise AssertionError(f"ranks did not end within {timeout} s\n" + "\n".join(self.texts())) from expired
        return Ended([process.returncode for process in self.processes], self.texts(), time.monotonic() - self.began)

    def texts(self) -> list[str]:
        """What each rank has said so far."""
        # Opened anew: with the handle that the rank writes by, reading would move where it writes.
        return [Path(f"/proc/self/fd/{file.fileno()}").read_text() for file in self.errors]
