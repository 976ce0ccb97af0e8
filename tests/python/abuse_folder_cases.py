"""Hostile folders whose checksums are right, so that what lies behind them is reached: data, checkpoints, runs, tokenizers
and the hub's cache. Kinds as in abuse_cases.py."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from abuse_mutators import WORDS, edge, mutate_bytes, mutate_json, mutate_json_file, mutate_safetensors
from abuse_stock import Case, Stock, copied_model, kind, sealed_manifest
from abuse_tokenizers import LINES
from abuse_tool_cases import PIPELINES
import google_crc32c

SHORT = ["--train.steps=2 steps", "--threads=1"]
RESUME = ["--train.steps=6 steps", "--resume.allow=train.steps", "--threads=1"]
ID_LISTS = ["", "0", "0-2147483646", "3,3", "5-4", "-1", "0-", ",", "1,2,", "99999999999999999999", "0-1,2-3,4-5", "7-9,500-516"]


def trained_or_evaluated(stock: Stock, folder: Path, dice: random.Random, masked: bool) -> Case:
    recipe = str(stock.masked_recipe if masked else stock.folder / "work" / "none.ini")
    extra = ["--data.skip_bad_shards"] if dice.random() < 0.2 else []
    command = dice.choice(["eval", "eval", "check", "train"])
    flags = ["--threads=1"] if command != "train" else [f"--run={folder / 'run'}", *SHORT]
    key = "train" if command == "train" or (command == "check" and dice.random() < 0.5) else "validation"
    return Case([command, recipe, f"--data.{key}={folder / 'data'}", *flags, *extra])


def copied_data(stock: Stock, folder: Path, masked: bool) -> tuple[Path, dict]:
    """Where the manifest of the copy lies, and what it holds."""
    shutil.copytree(stock.masked_data if masked else stock.folder / "work" / "validation", folder / "data")
    path = folder / "data" / "manifest.json"
    return path, json.loads(path.read_text())


@kind
def manifest(stock: Stock, folder: Path, dice: random.Random) -> Case:
    masked = dice.random() < 0.4
    path, value = copied_data(stock, folder, masked)
    if masked and dice.random() < 0.5:
        value["tokenizer"][dice.choice(["special", "continuing"])] = dice.choice(ID_LISTS)
        value["tokenizer"]["vocabulary"] = dice.choice([517, 517, 1, 2**31 - 1, 10**6])
    else:
        for _ in range(dice.choice([1, 1, 2])):
            value = mutate_json(value, dice)
    if isinstance(value, dict):
        sealed_manifest(path, value)
    else:
        path.write_text(json.dumps(value))
    return trained_or_evaluated(stock, folder, dice, masked)


@kind
def shard(stock: Stock, folder: Path, dice: random.Random) -> Case:
    masked = dice.random() < 0.3
    path, value = copied_data(stock, folder, masked)
    one = folder / "data" / value["shards"][0]["file"]
    mutate_safetensors(one, dice)
    data = one.read_bytes()
    value["shards"][0] |= {"bytes": len(data), "crc32c": f"{google_crc32c.value(data):08x}"}
    sealed_manifest(path, value)
    return trained_or_evaluated(stock, folder, dice, masked)


def sealed_checkpoint(step: Path, changed: Path) -> None:
    """The manifest's record of a file that was changed, and the manifest's own checksum, right again."""
    path = step / "MANIFEST.json"
    body, mark, _ = path.read_bytes().rpartition(b'"crc32c":"')
    value, data = json.loads(body.rstrip().rstrip(b",") + b"}"), changed.read_bytes()
    record = next(record for record in value["files"] if record["file"] == changed.name)
    length = len(data) if changed.suffix == ".json" else min(len(data), 8 + int.from_bytes(data[:8], "little"))
    record |= {"bytes": len(data), "head_bytes": length, "crc32c": f"{google_crc32c.value(data[:length]):08x}"}
    body = json.dumps(value, separators=(",", ":")).encode().removesuffix(b"}") + b","
    path.write_bytes(body + mark + b'%08x"}\n' % google_crc32c.value(body))


@kind
def state(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """A checkpoint whose state or headers were changed by who knows how to write checksums."""
    which = dice.choice(["none", "none", "lora"])
    shutil.copytree(stock.run(which), folder / "run")
    newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
    if dice.random() < 0.7:
        changed = newest / "state.json"
        mutate_json_file(changed, dice)
    else:
        changed = dice.choice(sorted(newest.glob("*.safetensors")))
        mutate_safetensors(changed, dice)
    sealed_checkpoint(newest, changed)
    return resumed(stock, folder, dice, which)


def resumed(stock: Stock, folder: Path, dice: random.Random, which: str = "none") -> Case:
    recipe, run = str(stock.folder / "work" / f"{which}.ini"), folder / "run"
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return dice.choice([
        Case(["train", recipe, f"--run={run}", *RESUME]), Case(["train", recipe, f"--run={run}", *RESUME]),
        Case(["train", recipe, f"--run={folder / 'other'}", f"--resume={dice.choice([newest, run])}", *RESUME]),
        Case(["eval", recipe, f"--run={run}", "--threads=1"]),
        Case(["eval", recipe, f"--checkpoint={dice.choice([newest, run, run / 'final', run / 'best'])}", "--threads=1"]),
        Case(["verify", str(dice.choice([newest, run]))]),
    ])  # fmt: skip


def replace_by_no_file(one: Path, dice: random.Random, stock: Stock) -> None:
    one.unlink()
    how = dice.randrange(4)
    if how == 1:
        one.mkdir()
    elif how == 2:
        one.symlink_to(dice.choice(["/dev/null", "/dev/zero", one, "../..", "/nonexistent", stock.folder / "input.safetensors"]))
    elif how == 3:
        os.mkfifo(one)


@kind
def model_folder(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """The folder of a teacher or a student with something else than a file in it; both have tokenizers, which are compared."""
    for role in ("teacher", "student"):
        shutil.copytree(stock.folder / "work" / role, folder / role)
        (folder / role / "tokenizer.json").write_text(stock.tokenizers[role == "student"])
    chosen = folder / dice.choice(["teacher", "student"])
    one = dice.choice(sorted(chosen.iterdir()))
    if dice.random() < 0.7:
        replace_by_no_file(one, dice, stock)
    else:
        one.write_bytes(mutate_bytes(one.read_bytes(), dice))
    both = [f"--teacher.model={folder / 'teacher'}", f"--student.model={folder / 'student'}", "--threads=1"]
    recipe, run = str(stock.folder / "work" / "none.ini"), f"--run={folder / 'run'}"
    return dice.choice([
        Case(["check", recipe, *both]), Case(["check", recipe, *both]), Case(["train", recipe, run, "--train.steps=1 steps", *both]),
        Case(["generate", f"--model={chosen}", "--prompt=the fox", "--max-new-tokens=2", "--ignore-eos", "--threads=1"]),
        Case(["tokenize", f"--model={chosen}", f"--input={recipe}"]),
    ])  # fmt: skip


@kind
def run_folder(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """Anything of a run's folder: changed, gone, or something else than a file."""
    which = dice.choice(["none", "none", "lora"])
    run = folder / "run"
    shutil.copytree(stock.run(which), run)
    one = dice.choice(sorted(path for path in run.rglob("*") if path.is_file() and path.name != "MANIFEST.json"))
    if dice.random() < 0.5:
        replace_by_no_file(one, dice, stock)
    elif one.suffix in (".json", ".safetensors") and one.parent.name in ("final", "best", "run"):
        (mutate_json_file if one.suffix == ".json" else mutate_safetensors)(one, dice)
    else:
        one.write_bytes(mutate_bytes(one.read_bytes(), dice))
    return resumed(stock, folder, dice, which)


# Tokenizers


def mutated_tokenizer(text: str, dice: random.Random) -> bytes:
    how = dice.randrange(6)
    if how == 0:
        return mutate_bytes(text.encode(), dice)
    value = json.loads(text)
    if how == 1:
        value |= dice.choice(PIPELINES)
    elif how == 2:
        vocabulary = value["model"]["vocab"]
        vocabulary[dice.choice(list(vocabulary))] = edge(dice)
    elif how == 3 and value["added_tokens"]:
        dice.choice(value["added_tokens"])[dice.choice(["id", "content", "special", "lstrip", "normalized"])] = edge(dice)
    else:  # not of the vocabulary alone, which holds most of the places
        for _ in range(dice.choice([1, 2])):
            part = dice.choice([key for key, item in value.items() if item])
            if part == "model" and dice.random() < 0.5:
                key = dice.choice([key for key in value["model"] if key != "vocab"] or ["type"])
                value["model"][key] = edge(dice)
            else:
                value[part] = mutate_json(value[part], dice)
    return json.dumps(value).encode()


@kind
def tokenizer(stock: Stock, folder: Path, dice: random.Random) -> Case:
    (folder / "tok").mkdir()
    (folder / "tok" / "tokenizer.json").write_bytes(mutated_tokenizer(dice.choice(stock.tokenizers), dice))
    if dice.random() < 0.3:
        model = stock.folder / "zoo" / "llama2"
        return Case(["generate", f"--model={model}", f"--tokenizer={folder / 'tok'}", f"--prompt={dice.choice(LINES)}",
                     "--max-new-tokens=4", "--ignore-eos", "--threads=1"])  # fmt: skip
    lines = "\n".join(LINES).encode()
    if dice.random() < 0.2:
        lines = mutate_bytes(lines, dice)
    (folder / "lines.txt").write_bytes(lines)
    flags = dice.choice([[], [f"--json={folder / 'out.json'}"], [f"--json={folder / 'out.json'}", "--skip-special-tokens"]])
    return Case(["tokenize", f"--model={folder / 'tok'}", f"--input={folder / 'lines.txt'}", "--threads=1", *flags])


# The hub's cache

NAMES = ["Org/model", "Org/model@main", "Org/model@v1", "Org/model@" + "a" * 40, "Org/model@", "Org/model@@", "Org/../model",
         "Org/model@../../x", "a/b/c", "/", "Org/", "Org/model@" + "x" * 5000, "Org/model\n", "O" * 300 + "/m", "-Org/m", "Org/m@-x"]  # fmt: skip
REFS = ["a" * 40, "a" * 40 + "\n", "A" * 40, "", "\n", "../" * 13 + "a", "x" * 100_000, "a" * 39, "\0" * 40, "b" * 40]


@kind
def hub(stock: Stock, folder: Path, dice: random.Random) -> Case:
    repository = folder / "hub" / "models--Org--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(dice.choice(REFS) if dice.random() < 0.4 else "a" * 40)
    for number, path in enumerate(sorted((stock.folder / "work" / "student").iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    parts = [repository, repository / "refs", repository / "refs" / "main", snapshot.parent, snapshot, *snapshot.iterdir(),
             *(repository / "blobs").iterdir()]  # fmt: skip
    if dice.random() < 0.6:
        one = dice.choice(sorted(parts))
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        other = [None, "/dev/zero", "/proc/self/environ", one, "..", "../../../../../etc/passwd", stock.folder / "work" / "student"]
        target = dice.choice(other)
        if target is not None:
            one.symlink_to(target)
        elif dice.random() < 0.5:
            one.mkdir() if dice.random() < 0.5 else os.mkfifo(one)
    name = dice.choice(NAMES) if dice.random() < 0.4 else "Org/model"
    place = {"HF_HUB_CACHE": dice.choice([str(folder / "hub")] * 5 + WORDS), "HF_HOME": dice.choice(["", str(folder), "/dev/null"])}
    if dice.random() < 0.7:
        flags = [f"--input={stock.folder / 'input.safetensors'}", f"--output={folder / 'out'}"]
        case = Case(["forward", f"--model={name}", "--threads=1", *flags])
    else:
        case = Case(["check", str(stock.folder / "work" / "none.ini"), f"--student.model={name}"])
    case.environment = {key: value.replace("\0", "") for key, value in place.items()}
    return case


@kind
def gguf_file(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """The header above all, which says where everything else lies."""
    data = stock.gguf.read_bytes()
    header = dice.choice([64, 512, 4096])
    damaged = mutate_bytes(data[:header], dice) + data[header:] if dice.random() < 0.9 else mutate_bytes(data, dice)
    (folder / "model.gguf").write_bytes(damaged)
    flags = dice.choice([[], [], ["--codes=floats"], ["--dtype=float16"], ["--dtype=bfloat16"]])
    return Case(["import-gguf", f"--model={folder / 'model.gguf'}", f"--output={folder / 'made'}", "--threads=1", *flags])


@kind
def gguf_export(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """A folder with damage in its numbers, its tokenizer or its weights, as one file."""
    model = copied_model(stock.folder / "zoo" / dice.choice(stock.families), folder / "model", True)
    what = dice.randrange(3)
    if what == 0:
        mutate_json_file(model / "config.json", dice)
    elif what == 1:
        mutate_safetensors(model / "model.safetensors", dice)
    flags = ["--without-tokenizer"]
    if what == 2:
        (model / "tokenizer.json").write_text(json.dumps(mutate_json(json.loads(dice.choice(stock.tokenizers)), dice)))
        flags = []
    flags += dice.choice([[], ["--quantize=int8"], ["--quantize=int4-sym-g32"], ["--dtype=bfloat16"]])
    return Case(["export-gguf", f"--model={model}", f"--output={folder / 'out.gguf'}", "--threads=1", *flags])
