"""Colour, and the line of a running training, as a terminal shows them: a real pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pytest
from limbeck_runner import REPOSITORY, Limbeck, run_program
from training_work import Work

RED, YELLOW, GREEN, PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[0m"
SMALL = REPOSITORY / "recipes" / "check_small.ini"


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("colour"), limbeck)


def environment(**more):
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    return base | {"TERM": "xterm-256color"} | more


def on_terminal(*arguments, columns=240, seconds=120, **more):
    """What a terminal of so many columns is sent, and the exit code."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen([Limbeck()._program, *map(str, arguments)], stdout=slave, stderr=slave, stdin=slave, env=environment(**more))
    os.close(slave)
    said, deadline = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                part = os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            said += part
        return said.decode(), process.wait(timeout=10)
    finally:
        process.kill()
        os.close(master)


def piped(*arguments, **more):
    done = run_program(*arguments, env=environment(**more))
    return done.stdout + done.stderr, done.returncode


def test_a_terminal_shows_what_passed_in_green_and_a_warning_in_yellow(work):
    said, code = on_terminal("check", work.recipe("frozen", student__quantize="nf4"))
    assert code == 0 and f"{GREEN}passed:{PLAIN} " in said and f"{YELLOW}warning:{PLAIN} " in said and RED not in said


def test_an_error_is_red():
    said, code = on_terminal("check", SMALL, "--student.dtipe=float32")
    assert code == 2 and said.startswith(f"{RED}limbeck:{PLAIN} ") and said.count("\033[") == 2, said


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}], ids=str)
def test_who_wants_or_knows_none_gets_none(more):
    said, code = on_terminal("check", SMALL, **more)
    assert code == 0 and "\033" not in said and "passed:" in said
    assert "\033" not in on_terminal("check", SMALL, "--student.dtipe=float32", **more)[0]


def test_an_empty_no_color_says_nothing():
    assert GREEN in on_terminal("check", SMALL, NO_COLOR="")[0]


def test_what_is_no_terminal_gets_none_unless_it_is_asked_for():
    assert "\033" not in piped("check", SMALL)[0]
    assert f"{GREEN}passed:{PLAIN}" in piped("check", SMALL, "--color=always")[0]
    assert piped("check", SMALL, "--student.dtipe=float32", "--color", "always")[0].startswith(f"{RED}limbeck:{PLAIN}")
    assert f"{GREEN}passed:{PLAIN}" in piped("check", SMALL, "--color=always", NO_COLOR="1")[0]
    assert "\033" not in on_terminal("check", SMALL, "--color=never")[0]


def test_another_word_is_refused():
    said, code = piped("check", SMALL, "--color=blue")
    assert code == 2 and "--color" in said and "auto" in said and "always" in said


PHASES = r"peak [\d.]+ [KMG]iB  ms: data (\d+)  teacher (\d+)  student (\d+)  loss (\d+)  backward (\d+)  update (\d+)"


def test_memory_and_phases_are_in_the_line_when_asked_for(work, tmp_path):
    recipe = work.recipe("phases", train__steps="60 steps", eval__every=0, data__batch_size=16)
    said, code = on_terminal("train", recipe, f"--run={tmp_path / 'run'}", "--train.progress=phases")
    assert code == 0
    found = [tuple(map(int, numbers)) for numbers in re.findall(PHASES, said)]
    print(found[:3], len(found))
    assert found and all(any(one) for one in found)
    plain, code = on_terminal("train", recipe, f"--run={tmp_path / 'other'}")
    assert code == 0 and " tokens/s" in plain and not re.search(PHASES, plain)


def test_what_the_line_shows_decides_nothing(work, tmp_path):
    """A run goes on whatever its line shows."""
    recipe = work.recipe("phases-resumed", train__steps="4 steps", optim__warmup="0 steps")
    assert piped("train", recipe, f"--run={tmp_path / 'run'}")[1] == 0
    said, code = piped("train", recipe, f"--run={tmp_path / 'run'}", "--train.progress=phases", "--color=never")
    assert code == 0 and "4 of 4 steps are done" in said, said
