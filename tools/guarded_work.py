"""How a tool ends, whatever it was given: with one line on stderr that names the file, and a documented exit code.

The work runs in a child process under limits of processor time and memory, which it sets anew for each step and each
record: a library that a stranger's file brings to panic, to abort, to grow or to run for ever ends the child, and what
was being done is still known, for it stands in memory that both share. A fault of our own is called that, exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import mmap
import os
import pathlib
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

FAULT_IN_LIMBECK, USAGE, DATA, WEIGHTS, MEMORY, IO, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
GIB, LONGEST_LINE, LONGEST_PLACE = 1 << 30, 1200, 4096
DIES_WITH_ITS_PARENT = 1  # PR_SET_PDEATHSIG
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Fault(Exception):
    """What ends a tool on purpose; one line: where, what came, what was wanted, what to type next."""

    code = FAULT_IN_LIMBECK


class UsageFault(Fault):
    """The options do not fit together or name nothing."""

    code = USAGE


class DataFault(Fault):
    """Texts, tokenizers or records that cannot be used."""

    code = DATA


class WeightsFault(Fault):
    """Weights or a model's configuration that cannot be used."""

    code = WEIGHTS


@dataclasses.dataclass
class Step:
    """What is being done, to which file or record, and what it may take. `advice`: what to type when it takes more."""

    doing: str
    where: str
    seconds: float
    advice: str
    memory: int = 0  # bytes, all that the process may hold
    code: int = DATA

    def refused(self, why: str) -> str:
        return f"{self.where}: {self.doing} {why}: {self.advice}"


class _Limits:
    """In the child: the step of now, and its limits. Processor time counts over all threads of the process."""

    def __init__(self, shared: mmap.mmap):
        self.shared = shared
        self._set = 0
        # Reserved by the libraries when they were loaded, and the stacks that their threads will have.
        self._base = _data_bytes() + (os.cpu_count() or 1) * (12 << 20)

    def begin(self, step: Step) -> None:
        wanted = self._base + step.memory
        if wanted != self._set:
            _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
            self._set = wanted
        text = json.dumps(dataclasses.astuple(dataclasses.replace(step, where=step.where[-1500:])), ensure_ascii=False)
        data = text.encode("utf-8", "replace")[: LONGEST_PLACE - 1] + b"\0"
        self.shared[: len(data)] = data
        signal.setitimer(signal.ITIMER_PROF, step.seconds)


_limits: _Limits | None = None


def step(doing: str, where: object, seconds: float, memory: int, advice: str, code: int = DATA) -> None:
    """From here until the next call: `doing` to `where` may take so many seconds of processor time and bytes."""
    if _limits:
        _limits.begin(Step(doing, str(where), seconds, advice, memory, code))


def libraries_are_loaded() -> None:
    """What they reserved for themselves is not counted with the work."""
    global _limits  # noqa: PLW0603: the process is this work's own
    if _limits:
        _limits = _Limits(_limits.shared)


def absent_folders(folders: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Those that making these will make, the deepest first."""
    with_parents = {one for folder in folders for one in (folder, *folder.parents)}
    return sorted((one for one in with_parents if not one.exists()), key=lambda one: -len(one.parts))


def remove_empty(folders: Iterable[pathlib.Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something, or was never made
            folder.rmdir()


def is_panic(error: BaseException) -> bool:
    """A Rust library that stopped itself; its exception derives from BaseException."""
    return type(error).__module__ == "pyo3_runtime"


def one_line(text: object, most: int = LONGEST_LINE) -> str:
    """Control characters would move the cursor of a terminal, or make two lines of one."""
    line = re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", " ", str(text)))
    return line.strip() if len(line) <= most else line[: most - 60].strip() + " ... " + line[-50:].strip()


def _data_bytes() -> int:
    found = re.search(r"VmData:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) << 10 if found else 0


def _current(shared: mmap.mmap) -> Step:
    text = bytes(shared[:]).split(b"\0")[0]
    return Step(*json.loads(text)) if text else Step("this tool", "its start", 0, "try again")


def _of_the_system(error: OSError, now: Step) -> str:
    where = now.where if error.filename is None else os.fsdecode(error.filename)
    advice = {28: "make room, or write elsewhere with --out", 122: "make room, or write elsewhere with --out",
              27: "raise the limit of file sizes (ulimit -f), or write elsewhere with --out"}
    return f"{where}: {error.strerror or error}: {advice.get(error.errno or 0, 'look at the path and its permissions')}"


def our_fault(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" at {pathlib.Path(place[0].filename).name}:{place[0].lineno}" if place else ""
    return (f"{type(error).__name__}: {error}{at} (a fault in limbeck, not in your files: please report it; LIMBECK_TRACE=1 "
            "shows where)")


def _attempt(work: Callable[[], int | None], shared: mmap.mmap) -> tuple[int, str]:
    """Exit code and line, "" for none."""
    try:
        return work() or 0, ""
    except Fault as fault:
        return fault.code, str(fault)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED, "interrupted: what was not finished is not used, type the same line again"
    except MemoryError:
        now = _current(shared)
        return now.code, now.refused(_too_much_memory(now))
    except OSError as error:
        if error.errno is None:  # no answer of the system: a library of ours uses the class for its own
            return FAULT_IN_LIMBECK, our_fault(error)
        return IO, _of_the_system(error, _current(shared))
    except BaseException as error:  # noqa: BLE001: the one place where everything ends
        if is_panic(error):
            now = _current(shared)
            return now.code, now.refused(f"breaks the library that does it ({one_line(error, 160)})")
        if os.environ.get("LIMBECK_TRACE"):
            traceback.print_exc()
        return FAULT_IN_LIMBECK, our_fault(error)


def _too_much_memory(now: Step) -> str:
    return f"needs more than {now.memory / GIB:.1f} GiB of memory"


def _death(number: int, now: Step, printed: str) -> tuple[int, str]:
    """Of a child that ended without a word."""
    if number == signal.SIGPROF:
        return now.code, now.refused(f"takes more than {now.seconds:.0f} s of processor time")
    if number == signal.SIGKILL:
        return MEMORY, now.refused("was ended from outside, perhaps by the system for want of memory")
    if "alloc" in printed or "memory" in printed:
        return now.code, now.refused(_too_much_memory(now))
    said = f" ({one_line(printed, 160)})" if printed.strip() else ""
    return now.code, now.refused(f"ends the library that does it by signal {number}{said}")


def _in_child(work: Callable[[], int | None], shared: mmap.mmap, answer: int, said: int, parent: int) -> None:
    global _limits  # noqa: PLW0603: the process is this work's own
    ctypes.CDLL(None).prctl(DIES_WITH_ITS_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)
    for number in FORWARDED[1:]:
        signal.signal(number, signal.SIG_DFL)
    # What libraries print when they panic or abort is kept from the terminal; ours goes there still.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(said, 2)
    _limits = _Limits(shared)
    code, line = _attempt(work, shared)
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(answer, json.dumps([code, line]).encode())
    os._exit(code)


def answered(tool: str, work: Callable[[], int | None], tidy: Callable[[], None] = lambda: None) -> int:
    """Does the work as described above and gives the exit code. `tidy`: called when the work failed, however it did."""
    shared, said = mmap.mmap(-1, LONGEST_PLACE), os.memfd_create("said")
    answers, answer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            os.close(answers)
            _in_child(work, shared, answer, said, parent)
        finally:
            os._exit(FAULT_IN_LIMBECK)
    os.close(answer)
    before = {number: signal.signal(number, lambda number, _frame: os.kill(child, number)) for number in FORWARDED}
    with os.fdopen(answers, "rb") as file:
        text = file.read()
    _pid, status = os.waitpid(child, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    printed = os.pread(said, 1 << 16, 0).decode("utf-8", "replace")
    os.close(said)
    if printed and os.environ.get("LIMBECK_TRACE"):
        print(printed, file=sys.stderr)
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if text:
        code, line = json.loads(text)
    elif ended_by:
        code, line = _death(ended_by, _current(shared), printed)
    else:
        code, line = FAULT_IN_LIMBECK, "ended without a word (a fault in limbeck: please report it)"
    shared.close()
    if code:
        tidy()
    if not text and ended_by in FORWARDED:
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    if line:
        print(f"{tool}: {one_line(line)}", file=sys.stderr, flush=True)
    return code
