"""What bash completes: the script of the program, sourced in bash, and asked as readline asks."""

import subprocess

import pytest
from limbeck_runner import REPOSITORY

ASK = r"""
source <("$1" completion)
compopt() { :; }  # known only while readline completes
cd "$2"; shift 2
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_limbeck
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def completed(limbeck, tmp_path):
    for name in ("mine.ini", "other.txt"):
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()

    def ask(*words):
        command = ["bash", "-c", ASK, "bash", str(limbeck._program), str(tmp_path), "limbeck", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    return ask


@pytest.mark.parametrize(
    "typed, offered",
    [
        (["tr"], {"train"}),
        (["che"], {"check"}),
        (["generate", "--max"], {"--max-new-tokens="}),
        (["generate", "--no-c"], {"--no-cache"}),  # a switch takes no value
        (["train", "mine.ini", "--teacher.dt"], {"--teacher.dtype="}),  # every recipe key is a flag
        (["train", "mine.ini", "--teacher.dtype", "=", "b"], {"bfloat16"}),
        (["train", "mine.ini", "--adapter.kind", "="], {"none", "lora", "dora", "ia3", "npt"}),
        (["train", "mine.ini", "--adapter.kind", "d"], {"dora"}),
        (["train", "mine.ini", "--data.shuffle", "=", "f"], {"false"}),
        (["train", "mine.ini", "--quiet", ""], {"mine.ini", "model"}),  # a switch is not followed by its value
        (["forward", "--model", "=", "mo"], {"model"}),
        (["forward", "--json", "o"], {"other.txt"}),
        (["forward", "--teacher.d"], set()),  # no recipe, no recipe keys
        (["check", ""], {"mine.ini", "model"}),
        (["verify", "ot"], {"other.txt"}),
        (["list", "mod"], {"models"}),
    ],
)
def test_offers(completed, typed, offered):
    assert completed(*typed) == offered


def test_every_flag_of_every_command_is_offered(completed, limbeck):
    inventory, command = {}, ""
    for line in (REPOSITORY / "tests" / "golden" / "options.txt").read_text().splitlines():
        if line.startswith("--"):
            inventory[command].add(line.split()[0])
        elif line.strip():
            command = line.removeprefix("limbeck ").split()[0]
            takes_recipe = "RECIPE" in line
            inventory[command] = set(inventory["recipe"]) if takes_recipe else set()
    del inventory["recipe"]
    assert {name for name in completed("") if not name.startswith("--")} == set(inventory)
    for command, flags in inventory.items():
        assert {flag.removesuffix("=") for flag in completed(command, "--")} == flags
