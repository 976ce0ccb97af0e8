"""Where a check's programs and libraries are, and how to run them on the CPU, on the GPU, or on the fake device."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_check_rows import Row


def package_folder(name: str) -> Path | None:
    """Of an installed package, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def importable(name: str) -> bool:
    return package_folder(name) is not None


def library_folders(build: Path) -> list[Path]:
    """The RUNPATH of what was built is another machine's: what stood there is looked for here."""
    torch, nvidia = package_folder("torch"), package_folder("nvidia")
    found = [build / "lib", torch and torch / "lib", nvidia and nvidia / "cu13" / "lib"]
    return [folder for folder in found if folder and folder.is_dir()]


def descendants(ancestor: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for process in found:  # it grows meanwhile
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


@dataclass
class Place:
    """What a section gets. `until` is on time.monotonic(): then it is killed, so long work should end before."""

    section: str
    build: Path
    scratch: Path
    dry: bool
    card: str
    until: float
    say: Callable[[str], None] = lambda doing: None
    began: float = field(default_factory=time.monotonic)
    flash_attention_3: str = ""  # a library of it

    def left(self) -> float:
        return self.until - time.monotonic()

    @property
    def gpu(self) -> str:
        """What --device=cuda runs on."""
        return "emulated device" if self.dry else self.card

    @property
    def threads(self) -> int:
        """Of the host. A dry run's models are so small that a second one only costs."""
        return 1 if self.dry else 2

    def program(self, name: str) -> Path:
        path = self.build / "bin" / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there: build it (tools/test), or name a build by --build or LIMBECK_BUILD")
        return path

    def environment(self, device: str, **more: str) -> dict[str, str]:
        folders = library_folders(self.build)
        if self.dry and device == "cuda":
            folders.insert(0, self.build / "fake_cuda")
        before = os.environ.get("LD_LIBRARY_PATH", "")
        found = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **more}
        found["LD_LIBRARY_PATH"] = ":".join([*map(str, folders), *([before] if before else [])])
        return found

    def run(self, command: list, device: str = "cpu", timeout: float = 600, environment: dict | None = None, **more: str) -> subprocess.CompletedProcess:
        """subprocess.run, both outputs captured as text. At its timeout all that it started ends, and nobody waits for a pipe."""
        words, limit = [str(word) for word in command], max(1.0, min(timeout, self.left()))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(words, env=environment or self.environment(device, **more), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                for process in [*descendants(child.pid), child.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                child.wait()
                raise
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(words, code, *said)

    def limbeck(self, *arguments, device: str = "cpu", threads: int = 0, **more: str) -> str:
        """What it printed; who ends with another code than 0 is a RuntimeError that says how."""
        command = [self.program("limbeck"), *arguments, "--device", device, "--threads", threads or self.threads, "--quiet"]
        done = self.run(command, device, **more)
        if done.returncode != 0:
            raise RuntimeError(f"limbeck {arguments[0]} on {device}: exit {done.returncode}: {last_line(done.stderr or done.stdout)}")
        return done.stdout

    def row(self, name: str, outcome: str, note: str = "", device: str | None = None, **more) -> Row:
        return Row(self.section, name, outcome, note, device=self.gpu if device is None else device, dry=self.dry,
                   at_second=round(time.monotonic() - self.began, 2), **more)  # fmt: skip
