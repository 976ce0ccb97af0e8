"""Mutated configs, weights, adapters, recipes, flags, data, checkpoints and inputs: whatever comes, the program answers with
a message and a documented code, in time and in little memory.

    LIMBECK_ABUSE=5000 pytest tests/python/test_abuse.py            # so many cases of each kind, from seed 0
    LIMBECK_ABUSE_CASE="config 17" pytest -s tests/python/test_abuse.py   # one again, with what it printed
    cmake --preset asan && cmake --build build/asan --target forked_program limbeck
    LIMBECK_BUILD=build/asan LIMBECK_ABUSE=500 pytest tests/python/test_abuse.py   # under ASan and UBSan
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import abuse_cases
import pytest
import torch
from limbeck_runner import ForkedProgram, build_folder
from safetensors.torch import load_file

CASES = int(os.environ.get("LIMBECK_ABUSE", "15"))  # of each kind
FIRST = int(os.environ.get("LIMBECK_ABUSE_FIRST", "0"))
ONE = os.environ.get("LIMBECK_ABUSE_CASE", "").split()
MOST_SECONDS, MOST_BYTES = 20, 2 << 30
# Under ASan a byte has an eighth of shadow, red zones around what it belongs to, and freed memory kept back: three times
# as much at most, and the machine code runs several times slower.
SANITIZED_SECONDS, SANITIZED_BYTES = 5 * MOST_SECONDS, 3 * MOST_BYTES
HALF_A_MESSAGE = re.compile(r"\b0 to -|nearest(:| is| are) *([).;]|$)|did you mean *\?|wanted *$")  # a range or an offer of nothing
CODES = {0, 2, 3, 4, 5, 6, 7, 75}  # the README's; 1 is a fault of the program
# For a sanitized build, and without effect on others. No leaks: a process that ends on purpose without freeing harms
# nobody, and what grows meets the bar on memory.
os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:quarantine_size_mb=16")
os.environ.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")


class Driver:
    """The program, forked for each case, within bars that it and a runaway allocation meet before the machine does."""

    LIMITS = {"data_bytes": 4 << 30, "file_bytes": 256 << 20}

    def __init__(self):
        self.slowest = self.largest = 0  # of the kind that is being tried
        self.sanitized = b"LIMBECK_SANITIZE:BOOL=ON" in (build_folder() / "CMakeCache.txt").read_bytes()
        # The shadow of ASan is larger than any limit.
        self._limits = {name: most for name, most in self.LIMITS.items() if not (self.sanitized and name == "data_bytes")}
        self._program = ForkedProgram(os.environ | {"OMP_NUM_THREADS": "1"})
        self.close = self._program.close

    def run(self, case: abuse_cases.Case, folder: Path) -> tuple[dict, str]:
        output, seconds = folder / "printed", SANITIZED_SECONDS if self.sanitized else MOST_SECONDS
        ended = self._program.run(arguments=case.arguments, environment=case.environment, stdout=str(output), stderr=str(output),
                                  folder=str(folder), seconds=seconds, **self._limits)  # fmt: skip
        self.slowest, self.largest = max(self.slowest, ended["seconds"]), max(self.largest, ended["peak_bytes"])
        return ended, output.read_text(errors="replace")


@pytest.fixture(scope="module")
def driver():
    one = Driver()
    yield one
    one.close()


@pytest.fixture(scope="module")
def stock(tmp_path_factory, limbeck):
    return abuse_cases.Stock(tmp_path_factory.mktemp("stock"), limbeck)


def faults_of(case: abuse_cases.Case, ended: dict, text: str, sanitized: bool) -> list[str]:
    faults = []
    if ended["timed_out"]:
        return [f"over time: {ended['seconds']:.0f} s"]
    if ended["signal"]:
        faults.append(f"signal {ended['signal']}")
    elif ended["code"] not in (case.codes or CODES):
        faults.append(f"exit {ended['code']}")
    if "fault in limbeck," in text:  # the help, too, says what code 1 is
        faults.append("a fault in limbeck")
    faults += [f"half a message: {line}" for line in text.splitlines() if HALF_A_MESSAGE.search(line)]
    if "runtime error:" in text or "AddressSanitizer" in text:
        faults.append("sanitizer")
    if ended["peak_bytes"] > (SANITIZED_BYTES if sanitized else MOST_BYTES):
        faults.append(f"{ended['peak_bytes'] >> 20} MiB")
    if ended["code"] > 0 and ended["code"] != 75 and not any(
        line.startswith("limbeck: ") and len(line) > 20 for line in text.splitlines()
    ):
        faults.append("no message")
    if case.finite and ended["code"] == 0 and "--allow-nonfinite" not in case.arguments:
        faults += [f"{name} is not finite" for name, tensor in load_file(case.finite).items()
                   if tensor.is_floating_point() and not torch.isfinite(tensor).all()]  # fmt: skip
    return faults


def tried(stock, driver, kind: str, seed: int, folder: Path) -> str:
    """What is wrong with the program's answer, with the line that has the case again; "" when nothing is."""
    folder.mkdir()
    case = abuse_cases.made(stock, kind, seed, folder)
    ended, text = driver.run(case, folder)
    if ONE:
        print(f"\nlimbeck {' '.join(case.arguments)}\n{ended}\n{text}")
    faults = faults_of(case, ended, text, driver.sanitized)
    shutil.rmtree(folder, ignore_errors=True)
    tail = " | ".join(line for line in text.splitlines()[-3:])[-300:]
    again = f'LIMBECK_ABUSE_CASE="{kind} {seed}" pytest -s tests/python/test_abuse.py'
    return f"{again}  # {', '.join(faults)}; {case.arguments[0]}: {tail}" if faults else ""


@pytest.mark.parametrize("kind", abuse_cases.KINDS)
def test_whatever_comes_is_answered(stock, driver, tmp_path, kind):
    if ONE and ONE[0] != kind:
        pytest.skip("another case was asked for")
    seeds = range(len(abuse_cases.KNOWN)) if kind == "known" else range(FIRST, FIRST + CASES)
    seeds = [int(ONE[1])] if ONE else seeds
    begin, driver.slowest, driver.largest = time.monotonic(), 0, 0
    found = [fault for seed in seeds if (fault := tried(stock, driver, kind, seed, tmp_path / str(seed)))]
    print(f"{kind}: {len(seeds)} cases, {len(found)} findings in {time.monotonic() - begin:.0f} s; the slowest "
          f"{driver.slowest:.1f} s, the largest {driver.largest >> 20} MiB", *found, sep="\n", flush=True)  # fmt: skip
    assert not found, f"{len(found)} of {len(seeds)} cases:\n" + "\n".join(found)


def test_the_same_seed_is_the_same_case(stock, tmp_path):
    for kind in abuse_cases.KINDS:
        texts = []
        for _ in range(2):
            folder = tmp_path / kind
            folder.mkdir()
            case = abuse_cases.made(stock, kind, 3, folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events."))
            texts.append((case.arguments, [path.read_bytes() for path in files]))
            shutil.rmtree(folder)
        assert texts[0] == texts[1], kind
