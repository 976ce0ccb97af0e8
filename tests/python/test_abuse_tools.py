"""The Python tools before files of strangers: whatever comes, one line that names it, a documented code, in time and in
little memory. Cases are made from seeds, each run in a process of its own.

    LIMBECK_ABUSE=2000 pytest tests/python/test_abuse_tools.py                      # so many of each kind
    LIMBECK_ABUSE_CASE="template 17" pytest -s tests/python/test_abuse_tools.py     # one again, with what it printed
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import abuse_tool_cases
import pytest
from limbeck_runner import REPOSITORY

CASES = int(os.environ.get("LIMBECK_ABUSE", "20"))  # of each kind
FIRST = int(os.environ.get("LIMBECK_ABUSE_FIRST", "0"))
ONE = os.environ.get("LIMBECK_ABUSE_CASE", "").split()
MOST_SECONDS, MOST_BYTES, LONGEST_LINE = 20, 2 << 30, 1500
CODES = {0, 2, 3, 4, 6}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return abuse_tool_cases.Stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def driver():
    command = [sys.executable, str(REPOSITORY / "tests" / "python" / "tool_driver.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()
        process.wait(30)


def faults_of(case: abuse_tool_cases.Case, ended: dict, text: str, folder: Path) -> list[str]:
    faults = []
    if ended["late"]:
        return [f"over {MOST_SECONDS} s"]
    if ended["code"] not in CODES:
        faults.append(f"exit {ended['code']}")
    if "Traceback" in text or "panicked" in text or "fault in limbeck" in text:
        faults.append("a traceback, a panic or a fault of ours")
    if ended["peak_bytes"] > MOST_BYTES:
        faults.append(f"{ended['peak_bytes'] >> 20} MiB")
    said = [line for line in text.splitlines() if line.startswith(f"{case.tool}: ")]
    if ended["code"] and (len(said) != 1 or len(said[0]) > LONGEST_LINE or not any(name in said[0] for name in case.about)):
        faults.append("no line that names the file")
    if (folder / "ran").exists():
        faults.append("a payload ran")
    if ended["code"] and (folder / "out").is_dir() and not any((folder / "out").iterdir()):
        faults.append("an empty folder stays")
    return faults


def tried(stock, driver, kind: str, seed: int, folder: Path) -> str:
    """What is wrong with the tool's answer, with the line that has the case again; "" when nothing is."""
    folder.mkdir()
    case = abuse_tool_cases.made(stock, kind, seed, folder)
    request = {"tool": case.tool, "arguments": case.arguments, "folder": str(folder), "seconds": MOST_SECONDS}
    driver.stdin.write(json.dumps(request) + "\n")
    driver.stdin.flush()
    ended = json.loads(driver.stdout.readline())
    text = (folder / "printed").read_text(errors="replace")
    if ONE:
        print(f"\n{case.tool} {' '.join(case.arguments)}\n{ended}\n{text}")
    faults = faults_of(case, ended, text, folder)
    shutil.rmtree(folder, ignore_errors=True)
    again = f'LIMBECK_ABUSE_CASE="{kind} {seed}" pytest -s tests/python/test_abuse_tools.py'
    return f"{again}  # {', '.join(faults)}: {' | '.join(text.splitlines()[-3:])[-400:]}" if faults else ""


@pytest.mark.parametrize("kind", abuse_tool_cases.KINDS)
def test_whatever_comes_is_answered(stock, driver, tmp_path, kind):
    if ONE and ONE[0] != kind:
        pytest.skip("another case was asked for")
    seeds = [int(ONE[1])] if ONE else range(FIRST, FIRST + CASES)
    found = [fault for seed in seeds if (fault := tried(stock, driver, kind, seed, tmp_path / str(seed)))]
    assert not found, f"{len(found)} of {len(seeds)} cases:\n" + "\n".join(found)
