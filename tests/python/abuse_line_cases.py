"""Hostile command lines, other trainers' spellings, and recipes of masked language models. Kinds as in abuse_cases.py."""

from __future__ import annotations

import random
from pathlib import Path

from abuse_mutators import WORDS, mutate_json_file
from abuse_stock import Case, Stock, copied_model, kind

ODD = ["--", "-", "--=", "=", "---", "-h", "--x", "--x=1", "--help=yes", "--quiet=maybe", "--threads", "--threads=-1", "\x01", "é", "@recipe",
       "--json", "--json=", "--plugin=", "--plugin=/dev/null", "--model=", "--seed=1e3", "a" * 70_000, "train", "no.ini", "--Model=x"]  # fmt: skip
# What a recipe of masked tokens may say of them, and of when it stops.
MASKED = {
    "data.masking": ["none", "whole_word", "token", "words"],
    "data.mask_fraction": ["0", "1", "1e-300", "0.15", "nan", "1.5"],
    "data.mask_replaced": ["0", "1", "0.9", "-0"],
    "data.mask_random": ["1", "0.2", "0.9999"],
    "data.packing": ["packed", "padded"],
    "data.sequence_length": ["1", "2", "64", "65", "511", "16777216"],
    "data.long_documents": ["split", "truncate"],
    "objective.divergence": ["topk", "js", "reverse_kl", "forward_kl"],
    "objective.hidden_loss": ["cosine", "mse"],
    "objective.hidden_projector": ["none", "linear", "mlp"],
    "objective.feature_weight": ["1", "1000000", "0"],
    "objective.layer_map": ["1:1 2:2", "auto", "4:4"],
    "objective.vocabulary_parallel": ["yes"],
    "objective.ce_weight": ["0", "1"],
    "objective.alpha": ["0", "1"],
    "teacher.kind": ["self", "ema", "model"],
    "model.pooling": ["mean", "cls"],
    "adapter.kind": ["lora", "dora", "ia3", "npt"],
    "student.quantize": ["int8", "nf4"],
    "train.early_stopping_patience": ["1", "2", "1073741824"],
    "eval.every": ["1", "2", "1073741824"],
    "eval.batches": ["1", "1073741824"],
    "eval.best": ["loss", "auto"],
    "checkpoint.every": ["1", "3"],
    "checkpoint.keep": ["0", "1"],
    "optim.warmup": ["100 %", "0 %", "1 steps"],
}


@kind
def masked(stock: Stock, folder: Path, dice: random.Random) -> Case:
    flags = [f"--{key}={dice.choice(MASKED[key])}" for key in dice.sample(list(MASKED), dice.choice([1, 2, 3, 5]))]
    if dice.random() < 0.4:
        family = dice.choice(["bert-masked", "distilbert-masked", "bert", "llama2", "bert-classifier"])
        source = stock.folder / "zoo" / (family if family in stock.families else "bert-masked")
        model = copied_model(source, folder / "model", False)
        if dice.random() < 0.5:
            mutate_json_file(model / "config.json", dice)
        flags.append(f"--{dice.choice(['student', 'teacher'])}.model={model}")
    command = dice.choice(["check", "train", "train", "eval"])
    end = ["--train.steps=3 steps", f"--run={folder / 'run'}"] if command == "train" else []
    return Case([command, str(stock.masked_recipe), *flags, *end, "--threads=1"])


@kind
def stopping(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """Early stopping, evaluations and checkpoints in odd rhythms, of a run that begins or goes on."""
    rhythm = [key for key in MASKED if key.startswith(("train.", "eval.", "checkpoint.", "optim."))]
    flags = [f"--{key}={dice.choice(MASKED[key] + WORDS[:12])}" for key in dice.sample(rhythm, dice.choice([1, 2, 4]))]
    steps = dice.choice(["0 steps", "1 steps", "3 steps", "1 samples", "7 samples", "30 tokens", "5 steps"])
    resume = dice.choice([[], [f"--resume={stock.run('none') / 'checkpoints' / 'step-00000004'}", "--resume.allow=train.steps"]])
    recipe = str(stock.folder / "work" / "none.ini")
    return Case(["train", recipe, *flags, f"--train.steps={steps}", f"--run={folder / 'run'}", "--threads=1", *resume])


def whole_line(stock: Stock, folder: Path, dice: random.Random) -> list[str]:
    model, recipe = f"--model={stock.folder / 'work' / 'student'}", str(stock.folder / "work" / "none.ini")
    adapter = f"--adapter={stock.run('lora') / 'final'}"
    return dice.choice([
        ["check", recipe], ["check", recipe], ["train", recipe, f"--run={folder / 'run'}"], ["eval", recipe],
        ["forward", model, f"--input={stock.folder / 'input.safetensors'}", f"--output={folder / 'out'}"],
        ["generate", model, "--prompt-ids=5,6", "--max-new-tokens=4"], ["merge", model, adapter, f"--output={folder / 'out'}"],
        ["list"], ["list", dice.choice(["aliases", "objectives", "models", "nothing"])], ["completion"], ["completion", "bash"],
        ["verify", str(stock.run("none"))], ["tokenize", model, f"--input={recipe}"], ["consolidate", model, adapter],
    ])  # fmt: skip


@kind
def command_line(stock: Stock, folder: Path, dice: random.Random) -> Case:
    words = whole_line(stock, folder, dice)
    for _ in range(dice.choice([1, 1, 2, 3])):
        at, how = dice.randrange(len(words) + 1), dice.randrange(6)
        if how == 0:
            words.insert(at, dice.choice(ODD))
        elif how == 1:
            words.insert(at, dice.choice(words or ["check"]))
        elif how == 2 and words:
            del words[at % len(words)]
        elif how == 3 and words:  # cut, or split at its "="
            one = words.pop(at % len(words))
            words[at:at] = [one[: dice.randrange(1, len(one) + 1)]] if dice.random() < 0.5 else one.split("=", 1)
        elif how == 4 and words:  # a letter more, less or twice
            one, place = words[at % len(words)], dice.randrange(1 + min(12, len(words[at % len(words)])))
            words[at % len(words)] = one[:place] + dice.choice(["", "x", "-", one[:1]]) + one[place + 1 :]
        else:
            words.append(f"--{dice.choice(stock.options['recipe'])}={dice.choice(WORDS)}")
    return Case(words or [""])  # no word at all is answered by the help


@kind
def spelling(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """The names that other trainers have for the options, as flags and as keys, with any value."""
    names = dice.choices(stock.spellings, k=dice.choice([1, 2, 3]))
    values = [dice.choice([*WORDS, "fp16", "bf16", "linear", "True", "0.1", "5"]) for _ in names]
    recipe = stock.folder / "work" / "none.ini"
    if dice.random() < 0.5:
        return Case(["check", str(recipe), *(f"--{name}={value}" for name, value in zip(names, values)), "--threads=1"])
    path = folder / "recipe.ini"
    path.write_text("".join(f"{name} = {value}\n" for name, value in zip(names, values)) + recipe.read_text(), encoding="utf-8")
    return Case(["check", str(path), "--threads=1"])


# What torchrun and Slurm tell the one process of a job.
LAUNCHED = [
    {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "TORCHELASTIC_RUN_ID": "run7", "TORCHELASTIC_USE_AGENT_STORE": "False"},
    {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
     "SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_STEP_NODELIST": "localhost"},
]  # fmt: skip
SAID = [*WORDS, "2(x3)", "4(x99999999999)", "gpu[01-99999999]", "gpu[07-08", "[1-2]", "a[1-2][3-4][5-9999]", "::1", "127.0.0.1", "localhost", "29517"]


@kind
def launcher(stock: Stock, folder: Path, dice: random.Random) -> Case:
    """Variables of launchers that do not fit together; whoever waits for the others says after a second that they are missing."""
    variables = dict(dice.choice(LAUNCHED))
    for name in dice.sample(list(variables), dice.choice([1, 1, 2, 3])):
        variables[name] = dice.choice(SAID)
        if dice.random() < 0.2:
            del variables[name]
    if dice.random() < 0.1:
        variables |= dice.choice(LAUNCHED)
    waits = ["--parallel.timeout=1", "--parallel.first_timeout=1", "--train.steps=1 steps", "--threads=1"]
    return Case(["train", str(stock.folder / "work" / "none.ini"), f"--run={folder / 'run'}", *waits], environment=variables)
