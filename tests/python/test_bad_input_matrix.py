"""Every kind of bad input or bad luck, what the program answers, and with which exit code: one row, one test. The last
test prints them as a table: `tools/test --again -R bad_input -V`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy
import pytest
import torch
import google_crc32c
from rank_processes import Ranks
from safetensors.torch import load_file, save_file
from training_work import LENGTH, VOCABULARY, Outcome, Work, checkpoints, llama, newest_checkpoint, saved

import token_rows

KEYS = dict(train__steps="12 steps", data__batch_size=2, checkpoint__every=3, checkpoint__keep=3)
TABLE: list[tuple[str, str, str]] = []
ROWS = []


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("matrix"), limbeck)


@pytest.fixture(scope="module")
def whole(work) -> Path:
    run = work.folder / "run-whole"
    Ranks(1, work.recipe("whole", **KEYS), f"--run={run}").end().well()
    return run


class Case:
    """One row: what it trains with, and what came of it."""

    def __init__(self, work: Work, whole: Path, folder: Path):
        self.work, self.whole, self.folder = work, whole, folder
        self.run = folder / "run"

    def train(self, *flags: str, ranks: int = 1, **keys) -> tuple[int, str]:
        recipe = self.work.recipe(self.folder.name, **(KEYS | keys))
        ended = Ranks(ranks, recipe, f"--run={self.run}", *flags).end(120)
        assert len(set(ended.codes)) == 1, ended
        return ended.codes[0], ended.errors[0]

    def model(self, change, role: str = "student") -> Path:
        """A copy of a model's folder whose tensors `change` has changed in place."""
        folder = self.folder / role
        shutil.copytree(self.work.folder / role, folder)
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors)
        save_file(tensors if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def resumable(self, newest: int = 12) -> None:
        shutil.copytree(self.whole, self.run)
        for checkpoint in checkpoints(self.run):
            if int(checkpoint.name.removeprefix("step-")) > newest:
                shutil.rmtree(checkpoint)

    def resume(self, *flags: str, **keys) -> tuple[int, str]:
        recipe = self.work.recipe("whole" if not keys else self.folder.name, **(KEYS | keys))
        ended = Ranks(1, recipe, f"--run={self.run}", *flags).end(120)
        return ended.codes[0], ended.errors[0]


def row(name: str, code: int, *words: str):
    """Declares a row: the exit code, and what the message must say."""

    def declare(function):
        ROWS.append((name, code, words, function))
        return function

    return declare


def check_row(work, whole, tmp_path, index):
    name, code, words, function = ROWS[index]
    got, text = function(Case(work, whole, tmp_path))
    assert got == code, f"{name}: exit {got}, wanted {code}: {text}"
    missing = [word for word in words if word not in text]
    assert not missing, f"{name}: {missing} not in: {text}"
    lines = [line for line in text.splitlines() if all(word in line for word in words[:1])]
    TABLE.append((name, str(got), (lines[-1] if lines else text.strip().splitlines()[-1])))


@row("float16 gradient overflows: skipped on all ranks, scale halved", 0, "is not finite: update skipped", "loss scale")
def _(case):
    keys = dict(student__dtype="float16", teacher__dtype="float16", train__accumulate=2, optim__loss_scale_start=2**26)
    code, text = case.train(ranks=2, **keys)
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["phase"] == "train"]
    assert trained[0]["loss_scale"] == 2**25 and trained[-1]["skipped"] > 0, trained
    return code, text


def huge(tensors):
    tensors["lm_head.weight"].fill_(3e38)


@row("float32 gradient not finite, ten times in a row", 5, "updates in a row were skipped", "student.")
def _(case):
    return case.train(student__model=case.model(huge))


@row("float16 scale at its floor and still overflowing", 5, "its floor", "student.dtype")
def _(case):
    return case.train(student__dtype="float16", optim__loss_scale_start=2**30, optim__loss_scale_floor=2**30)


@row("all labels of a batch masked", 0)
def _(case):
    data = case.folder / "data"
    writer = token_rows.ShardWriter(data, shard_tokens=1 << 20, labelled=False) if data.mkdir() is None else None
    for number, ids in enumerate(token_rows.random_documents(40, 6, LENGTH, VOCABULARY, seed=1)):
        mask = numpy.full(len(ids), 0 if number < 4 else 1, numpy.uint8)
        stream = token_rows.Stream(ids=numpy.array(ids, numpy.int32), mask=mask)
        writer.add(token_rows.EncodedDocument(student=stream, teacher=None, position=None, label=None))
    writer.finish({"tokenizer": {"digest": "0" * 64, "vocabulary": VOCABULARY, "end_of_sequence": 2, "padding": 0}})
    code, text = case.train(data__train=data, objective__alpha=0, teacher__model=None, data__validation=None)
    first = json.loads((case.run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == 0 and first["targets"] == 0, first
    return code, f"{text}\nstep 1: loss {first['loss']}, targets {first['targets']}"


def spoil(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


@row("NaN in the student's file", 4, "model.layers.1.mlp.up_proj.weight", "nan")
def _(case):
    code, text = case.train(student__model=case.model(spoil))
    return code, text.lower()


@row("NaN in the teacher's file", 4, "model.layers.1.mlp.up_proj.weight", "nan")
def _(case):
    code, text = case.train(teacher__model=case.model(spoil, "teacher"))
    return code, text.lower()


@row("weights overflow: state kept aside, never the newest", 5, "diverged-", "optim.learning_rate")
def _(case):
    # Each update multiplies weights by 1 - 1000 x 1000: the first leaves the range of float16.
    return case.train(student__dtype="float16", teacher__dtype="float16", checkpoint__every=1,
                      optim__learning_rate=1000, optim__weight_decay=1000, optim__warmup="1 steps")  # fmt: skip


@row("empty data set", 3, "no", "data.train")
def _(case):
    return case.train(data__train=token_rows.write(case.folder / "data", [], VOCABULARY))


@row("fewer samples than one batch", 3, "data.batch_size")
def _(case):
    few = token_rows.random_documents(3, 6, LENGTH, VOCABULARY, seed=1)
    return case.train(data__train=token_rows.write(case.folder / "data", few, VOCABULARY), data__batch_size=8)


@row("token id beyond the vocabulary", 3, "the greatest in use is 218")
def _(case):
    strange = [[3, 4, VOCABULARY + 7, 5, 2]] * 40
    return case.train(data__train=token_rows.write(case.folder / "data", strange, VOCABULARY))


@row("documents longer than a row: truncated, with counts", 0, "truncated")
def _(case):
    long = token_rows.random_documents(40, 30, 60, VOCABULARY, seed=1)
    return case.train(data__train=token_rows.write(case.folder / "data", long, VOCABULARY))


def shard(case) -> Path:
    shutil.copytree(case.work.folder / "train", case.folder / "data")
    return next(path for path in (case.folder / "data").iterdir() if path.name != "manifest.json")


@row("truncated shard", 3, "shard")
def _(case):
    os.truncate(path := shard(case), 100)
    code, text = case.train(data__train=path.parent)
    assert path.name in text, text
    return code, text.replace(path.name, f"shard {path.name}")


@row("empty shard", 3, "data.skip_bad_shards")
def _(case):
    os.truncate(path := shard(case), 0)
    return case.train(data__train=path.parent)


def flip(path: Path, byte: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 4
    path.write_bytes(data)


@row("one flipped bit in a shard", 3, "CRC-32C")
def _(case):
    flip(path := shard(case))
    return case.train(data__train=path.parent)


@row("other data under the same name, on resume", 4, "digest of data.train was", "--resume.allow=data.train")
def _(case):
    case.resumable(6)
    token_rows.write(case.folder / "data", token_rows.random_documents(40, 6, LENGTH, VOCABULARY, seed=9), VOCABULARY)
    return case.resume(data__train=case.folder / "data")


@row("integers where weights should be", 4, "model.norm.weight")
def _(case):
    return case.train(student__model=case.model(lambda t: t | {"model.norm.weight": t["model.norm.weight"].long()}))


@row("a tensor is missing", 4, "model.norm.weight")
def _(case):
    return case.train(student__model=case.model(lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}))


@row("a tensor too many", 4, "model.layers.9.mlp.up_proj.weight")
def _(case):
    return case.train(student__model=case.model(lambda t: t | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}))


@row("tied weights stored twice and different", 4, "lm_head.weight")
def _(case):
    folder = case.model(lambda t: None)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return case.train(student__model=folder)


@row("a tensor of another shape", 4, "model.norm.weight")
def _(case):
    return case.train(student__model=case.model(lambda t: t | {"model.norm.weight": torch.ones(7)}))


@row("a header that lies about its length", 4, "model.safetensors")
def _(case):
    folder = case.model(lambda t: None)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[0:8] = (2**63).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(data)
    return case.train(student__model=folder)


@row("a FIFO as a weights file", 4, "model.safetensors")
def _(case):
    folder = case.model(lambda t: None)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    return case.train(student__model=folder)


@row("a weights file that is a link out of its folder", 4, "model.safetensors")
def _(case):
    folder = case.model(lambda t: None)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(case.work.folder / "student" / "model.safetensors")
    return case.train(student__model=folder)


@row("a pickle instead of safetensors", 4, "pytorch_model.bin")
def _(case):
    folder = case.model(lambda t: None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return case.train(student__model=folder)


@row("a run folder that cannot be made", 6, "--run=DIR")
def _(case):
    case.run.write_text("a file where the folder should be")
    return case.train()


@row("kill -9, then the same command", 0, "resumed from")
def _(case):
    recipe = case.work.recipe(case.folder.name, **KEYS)
    ranks = Ranks(1, recipe, f"--run={case.run}")
    while len(checkpoints(case.run)) == 0:
        assert ranks.processes[0].poll() is None
        time.sleep(0.001)
    ranks.signal(0)
    assert ranks.end().codes == [-9]
    code, text = case.train("--resume=auto")
    assert Outcome.of(case.run).differences(Outcome.of(case.whole)) == []
    return code, text


@row("newest checkpoint damaged: the one before it, said so", 0, "step-00000012", "resumed from")
def _(case):
    case.resumable()
    flip(newest_checkpoint(case.run) / "model-00000.safetensors")
    code, text = case.resume()
    assert "step-00000009" in text, text
    return code, text


@row("the same with --resume.strict", 4, "model-00000.safetensors")
def _(case):
    case.resumable()
    flip(newest_checkpoint(case.run) / "model-00000.safetensors")
    return case.resume("--resume.strict=true")


@row("every checkpoint damaged", 4, "step-")
def _(case):
    case.resumable()
    for checkpoint in checkpoints(case.run):
        flip(checkpoint / "optim-00000.safetensors")
    return case.resume()


@row("a checkpoint of a newer format", 4, "checkpoint format 9", "newer one")
def _(case):
    case.resumable()
    for checkpoint in checkpoints(case.run):
        manifest = checkpoint / "MANIFEST.json"
        text = manifest.read_bytes().replace(b'"version":1', b'"version":9')
        body, mark, _ = text.rpartition(b'"crc32c":"')
        assert mark and b'"version":9' in body
        manifest.write_bytes(body + mark + b'%08x"}\n' % google_crc32c.value(body))
    return case.resume()


@row("SIGTERM: saved, then 75", 75, "stopped by a signal after step", "the same command goes on")
def _(case):
    recipe = case.work.recipe(case.folder.name, **(KEYS | dict(train__steps="100000 steps")))
    ranks = Ranks(1, recipe, f"--run={case.run}")
    while not checkpoints(case.run):
        assert ranks.processes[0].poll() is None
        time.sleep(0.001)
    ranks.signal(0, signal.SIGTERM)
    ended = ranks.end(30)
    assert subprocess.run([case.work.limbeck._program, "verify", newest_checkpoint(case.run), "--quiet"],
                          stdout=subprocess.DEVNULL, timeout=60).returncode == 0  # fmt: skip
    return ended.codes[0], ended.errors[0]


@row("two runs in one folder", 2, "another limbeck process trains there", "process")
def _(case):
    recipe = case.work.recipe(case.folder.name, **(KEYS | dict(train__steps="100000 steps")))
    first = Ranks(1, recipe, f"--run={case.run}")
    while not (case.run / "metrics.jsonl").exists():
        assert first.processes[0].poll() is None
        time.sleep(0.001)
    result = case.train()
    first.signal(0)
    first.end()
    return result


@row("a folder that holds another run", 2, "holds a run already")
def _(case):
    case.resumable(0)
    return case.resume()


@row("file times turned around: ordered by step all the same", 0, "9 of 12 steps are done")
def _(case):
    case.resumable(9)
    for age, checkpoint in enumerate(checkpoints(case.run)):
        os.utime(checkpoint, (10**9 - age * 10**6,) * 2)
    return case.resume()


@row("another learning rate on resume", 4, "optim.learning_rate was", "--resume.allow=optim.learning_rate")
def _(case):
    case.resumable(6)
    return case.resume(optim__learning_rate=2e-3)


@row("another dtype on resume", 4, "student.dtype was", "--resume.allow=student.dtype")
def _(case):
    case.resumable(6)
    return case.resume(student__dtype="bfloat16")


@row("ranks with different recipes", 7, "the ranks disagree", "optim.learning_rate", "rank 1")
def _(case):
    recipe = case.work.recipe(case.folder.name, **(KEYS | dict(train__accumulate=2)))
    rates = ["--optim.learning_rate=0.001", "--optim.learning_rate=0.002"]
    ended = Ranks(2, recipe, f"--run={case.run}", per_rank=lambda rank: [rates[rank]]).end(60)
    assert ended.codes == [7, 7], ended
    return ended.codes[0], ended.errors[0]


@row("one rank dies", 7, "rank 1 (", "is gone")
def _(case):
    recipe = case.work.recipe(case.folder.name, **(KEYS | dict(train__accumulate=2, train__steps="100000 steps")))
    ranks = Ranks(2, recipe, f"--run={case.run}")
    while not checkpoints(case.run):
        assert ranks.processes[0].poll() is None
        time.sleep(0.001)
    ranks.signal(1)
    ended = ranks.end(30)
    return ended.codes[0], ended.errors[0]


@row("ranks that cannot divide an update", 2, "train.accumulate", "multiple of 2")
def _(case):
    return case.train(ranks=2)


@row("more memory than there is", 5, "out of memory", "limbeck check")
def _(case):
    wide = saved(llama(512, 6, seed=1), case.folder / "wide")
    program = case.folder / "limbeck-with-little-memory"
    program.write_text(f'#!/bin/sh\nexec prlimit --data={240 << 20} {case.work.limbeck._program} "$@"\n')
    program.chmod(0o755)
    recipe = case.work.recipe(case.folder.name, **(KEYS | dict(data__batch_size=128, student__model=wide)))
    ended = Ranks(1, recipe, f"--run={case.run}", program=program).end(60)
    return ended.codes[0], ended.errors[0]


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[name for name, *_ in ROWS])
def test_row(work, whole, tmp_path, index):
    check_row(work, whole, tmp_path, index)


LIBRARY = {
    "a disk call fails, once each (ENOSPC, EIO, short write, EINTR, fsync)": "CheckpointFailure*:*DiskCall*:*CheckpointFail*",
    "power loss after any call, un-flushed writes lost or reordered": "*Crash*:*PowerLoss*:*Replay*",
    "any bit of a checkpoint flipped, files cut or missing": "*CheckpointDamage*:*Damage*",
}


@pytest.mark.parametrize("name", LIBRARY)
def test_row_of_the_checkpoint_library(limbeck, name):
    program = limbeck._program.parent / "trainer_test"
    done = subprocess.run([program, f"--gtest_filter={LIBRARY[name]}"], capture_output=True, text=True, timeout=600)
    passed = [line for line in done.stdout.splitlines() if line.startswith("[  PASSED  ]")]
    assert done.returncode == 0 and passed and " 0 tests" not in passed[0], done.stdout[-3000:]
    TABLE.append((name, "–", f"trainer_test --gtest_filter='{LIBRARY[name]}': {passed[0].split(']')[1].strip()}"))


def test_the_table(capsys):
    if len(TABLE) < len(ROWS):
        pytest.skip("only a part of the rows ran")
    width = max(len(name) for name, _, _ in TABLE)
    with capsys.disabled():
        print(f"\n{'input':<{width}}  exit  message")
        for name, code, message in TABLE:
            print(f"{name:<{width}}  {code:>4}  {message[:400]}")
