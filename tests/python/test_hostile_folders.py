"""Folders of a run or a model in which a stranger put something else than files, or state that no run saves."""

import json
import os
import shutil

import pytest
from abuse_folder_cases import sealed_checkpoint
from test_command_line import refused
from training_work import Work, checkpoints

from limbeck_runner import Limbeck

SHORT = dict(train__steps="2 steps", checkpoint__every=1, data__batch_size=2)
RESUME = ("--train.steps=4 steps", "--resume.allow=train.steps", "--quiet")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    made = Work(tmp_path_factory.mktemp("folders"), Limbeck(threads=1))
    made.train("whole", threads=1, **SHORT)
    return made


@pytest.mark.parametrize(
    "change, words",
    [
        ({"optimizer": {"loss_scale": {}}}, '"optimizer": key "loss_scale" = an object, wanted a number'),
        ({"optimizer": 3}, 'key "optimizer" = 3, wanted an object'),
        ({"tokens": -1}, 'key "tokens" = -1, wanted an integer in [0, '),
        ({"tokens": 1e308}, 'key "tokens" = 1e+308, wanted an integer in [0, '),
        ({"seconds": "x"}, 'key "seconds" = "x", wanted a number in [0.0, '),
        ({"best_step": None}, 'key "best_step" is missing, wanted an integer in [0, '),
        ({"last": {"targets": 1, "values": [[1]]}}, "is no state of a training run"),
        ({"recipe": []}, "is no state of a training run"),
    ],
    ids=str,
)
def test_a_state_of_odd_values_is_refused_by_its_key(work, tmp_path, change, words):
    run = tmp_path / "run"
    shutil.copytree(work.folder / "run-whole", run)
    state = checkpoints(run)[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    sealed_checkpoint(state.parent, state)
    message = refused("train", work.folder / "whole.ini", f"--run={run}", *RESUME, code=4)
    assert f"{state}: {words}" in message


@pytest.mark.parametrize("what", ["fifo", "link", "nowhere", "folder"])
def test_lines_are_added_to_a_regular_file_only(work, tmp_path, what):
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    target.write_text("mine\n")
    path = run / "metrics.jsonl"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(target if what == "link" else tmp_path / "new")
    message = refused("train", work.folder / "whole.ini", f"--run={run}", "--resume=auto", "--quiet", code=6, timeout=20)
    name = {"fifo": "a FIFO", "folder": "a folder"}.get(what, "a link")
    assert message == f"{path}: is {name}, wanted a regular file or none: choose another folder with --run=DIR"
    assert target.read_text() == "mine\n" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["fifo", "device", "text"])
def test_tokenizers_are_compared_as_files_of_a_bounded_size(work, tmp_path, what):
    for role in ("teacher", "student"):
        shutil.copytree(work.folder / role, tmp_path / role)
        (tmp_path / role / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {role: 1}}}))
    path = tmp_path / "teacher" / "tokenizer.json"
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 100_000)
    models = (f"--student.model={tmp_path / 'student'}", f"--teacher.model={tmp_path / 'teacher'}")
    message = refused("check", work.folder / "whole.ini", *models, "--quiet", code=4, timeout=20)
    assert str(path) in message
