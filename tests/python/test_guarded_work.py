"""How the tools end: each of these works is run by a real process of its own under guarded_work."""

import os
import signal
import subprocess
import sys
import time

import pytest
from limbeck_runner import REPOSITORY

HEAD = """\
import os, sys, time
sys.path.insert(0, {tools!r})
from guarded_work import DataFault, GIB, UsageFault, answered, step
def work():
    step("reading it", "f.txt", {seconds}, GIB, "leave it out")
{body}
sys.exit(answered("tool", work, lambda: print("tidied", flush=True)))
"""
ENDS = {  # what the work does, its exit code, its line
    "is done": ("pass", 0, ""),
    "refuses data": ("raise DataFault('f.txt:3: no JSON')", 3, "tool: f.txt:3: no JSON"),
    "refuses options": ("raise UsageFault('--out: wanted a folder')", 2, "tool: --out: wanted a folder"),
    "two lines": ("raise DataFault('a\\n\\x1b[2Jb\\u202e')", 3, "tool: a [2Jb"),
    "for ever": ("while True: pass", 3, "tool: f.txt: reading it takes more than 1 s of processor time: leave it out"),
    "grows": ("x = [b'1' * (1 << 28) for _ in range(99)]", 3, "tool: f.txt: reading it needs more than 1.0 GiB of memory: leave it out"),
    "grows by little": ("x = [b'1' * 9000 for i in range(1 << 30)]", 3, "needs more than 1.0 GiB of memory"),
    "aborts": ("os.write(2, b'assertion failed\\nin a library'); os.abort()", 3,
               "tool: f.txt: reading it ends the library that does it by signal 6 (assertion failed in a library): leave it out"),
    "crashes": ("import ctypes; ctypes.string_at(8)", 3, "ends the library that does it by signal 11"),
    "our fault": ("{}['x']", 1, "tool: KeyError: 'x' at <string>:6 (a fault in limbeck, not in your files: please report it; "
                  "LIMBECK_TRACE=1 shows where)"),
    "no such file": ("open('/nowhere/x')", 6, "tool: /nowhere/x: No such file or directory: look at the path and its permissions"),
    "full disk": ("raise OSError(28, 'No space left on device')", 6, "tool: f.txt: No space left on device: make room"),
    "not the system's": ("raise OSError('of a library')", 1, "a fault in limbeck"),
    "panics": ("import tokenizers as t\n    n = t.normalizers.Replace(t.Regex('(a+)+$'), 'b')\n    n.normalize_str('a' * 40 + '!')", 3,
               "tool: f.txt: reading it breaks the library that does it (Onig: Regex search error"),
}  # fmt: skip


def command(body, seconds=30):
    text = HEAD.format(tools=str(REPOSITORY / "tools"), body="    " + body, seconds=seconds)
    return [sys.executable, "-c", text]


@pytest.mark.parametrize("name", ENDS)
def test_a_tool_ends_with_one_line(name):
    body, code, line = ENDS[name]
    begin = time.monotonic()
    # Only the work without an end has a second: filling a GiB in small pieces can take one by itself.
    seconds = 1 if name == "for ever" else 30
    done = subprocess.run(command(body, seconds), text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "tidied\n" if code else ""), done.stderr
    assert line in done.stderr and done.stderr.count("\n") == (1 if line else 0), done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - begin < 20


def test_our_faults_show_where_on_request():
    done = subprocess.run(command("{}['x']"), text=True, capture_output=True, timeout=60, check=False,
                          env=os.environ | {"LIMBECK_TRACE": "1"})  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr and "in work" in done.stderr


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT])
def test_the_child_goes_with_its_parent(number):
    body = "print(os.getpid(), flush=True)\n    time.sleep(60)"
    with subprocess.Popen(command(body), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(number)
        _out, said = parent.communicate(timeout=20)
    wanted = 130 if number == signal.SIGINT else -number
    assert parent.returncode == wanted and "Traceback" not in said, said
    for _ in range(200):
        if not is_running(child):
            return
        time.sleep(0.02)
    raise AssertionError("the child is running still")
