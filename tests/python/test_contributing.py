"""What CONTRIBUTING.md points at is there."""

import re
from pathlib import Path

from limbeck_runner import REPOSITORY

TEXT = (REPOSITORY / ".github" / "CONTRIBUTING.md").read_text()
FLOORS = ("kernels", "modules", "trainer", "tests", "tools", "recipes", "docs")


def rooms(row: str) -> list[Path]:
    """`kernels/operator/`, `cpu/`: the second is beside the first."""
    names = re.findall(r"`([^`]+/)`", row)
    beside = Path(names[0]).parent
    return [Path(name) if name.startswith(FLOORS) else beside / name for name in names]


def test_every_path_exists():
    paths = re.findall(r"`((?:kernels|modules|trainer|tests|tools|recipes|docs)/[\w./-]+?)`", TEXT)
    assert len(paths) > 60
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_a_newcomers_questions_are_answered_by_files():
    table = TEXT.split("A newcomer's questions:")[1].split("\n\n")[1]
    answers = [row for row in table.splitlines() if row.count("|") == 3][2:]
    assert len(answers) >= 10
    for row in answers:
        files = re.findall(r"`([\w/.]+/[\w.]+)`", row)
        assert files and all((REPOSITORY / file).is_file() for file in files), row


def test_every_room_is_in_the_table_and_has_files():
    table = TEXT.split("| room | what is in it |")[1].split("\n\n")[0]
    named = {room.as_posix() for row in table.splitlines() if row.startswith("| `") for room in rooms(row.split("|")[1])}
    assert [room for room in sorted(named) if not list((REPOSITORY / room).glob("*.*"))] == []
    below = {path.parent.relative_to(REPOSITORY).as_posix() for floor in FLOORS[:3] for path in (REPOSITORY / floor).rglob("*.cpp")}
    inside = [room for room in below if "/" in room and not any(room == name or room.startswith(name + "/") for name in named)]
    # Files of a floor's room that is only a corridor to others stand beside them.
    assert sorted(inside) == ["modules/adapters", "trainer/cli", "trainer/parallel"]
