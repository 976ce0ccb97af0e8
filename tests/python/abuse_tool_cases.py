"""Hostile files for the Python tools, by kind and seed: whole ones changed a little, and ones that are made to break."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import report_examples
import tokenizers
import torch
from abuse_mutators import EDGES, mutate_bytes, mutate_json, mutate_json_file, mutate_safetensors
from safetensors.torch import save_file

KINDS = ("records", "parquet", "tokenizer", "config", "template", "pickle", "tensors", "layers", "classifier", "report", "budgets", "sweep",
         "profile", "pareto", "snippets", "similarity", "resnet_bk")  # fmt: skip
WORDS = "the quick brown fox jumps over the lazy dog größer 日本語 🙂 def f(x):\n    return x ** 2\n".split(" ")
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
         {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": "And 3+3?"},
         {"role": "assistant", "content": "6, größer."}]
RECORDS = [
    {"text": "a text\n\nof two parts"}, {"messages": TURNS}, {"conversations": [{"from": "human", "value": "a"},
     {"from": "gpt", "value": "b"}]}, {"prompt": "2+2? ", "completion": "4"}, {"prompt": TURNS[:2], "completion": TURNS[2:3]},
    {"instruction": "Add.", "input": "2+2", "output": "4.", "history": [["a", "b"]], "system": "s"},
    {"prompt": "2+2?", "chosen": TURNS[1:3], "rejected": TURNS[1:2]}, {"chosen": "ab cd", "rejected": "ab ce"},
    {"prompt": "p", "chosen": "c", "rejected": "r"}, {"text": "good", "label": "yes"}, {"text": "bad", "label": 1}]  # fmt: skip
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
PARTS = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if add_generation_prompt %}",
    "{% endif %}", "{{ 'a' * 999999999 }}", "{{ 'a' * 9999999999999 }}", "{% for i in range(99999) %}", "{{ range(10**9) }}",
    "{% set ns = namespace(x='ab') %}", "{% set ns.x = ns.x * 1000 %}", "{{ ns.x }}", "{{ raise_exception('no\nway') }}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}", "{{ f(1) }}", "{{ messages / 2 }}", "{{ messages[99].content }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ messages.append(1) }}", "{{ x.y.z }}", "{{ 1 / 0 }}",
    "{{ '\\ud800' }}", "{% generation %}", "{% endgeneration %}", "{{ messages | tojson }}", "{{ messages | nothing }}",
    "{{ (10 ** 10 ** 8) % 7 }}", "{% include 'x' %}", "{% import '/etc/passwd' as p %}", "{{ strftime_now('%Y' * 99) }}",
    "{{ lipsum(9999) }}", "{{ '%999999999d' | format(1) }}", "{{ '{:>999999999}'.format(1) }}", "{{ messages | map('upper') | list }}",
    "{% raw %}", "{#", "{%", "}}", "{{ [1] * 999999999 }}", "{{ 'a'.ljust(2**31) }}", "{{ messages|batch(2)|list }}", "{{ self }}",
    "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' | urlize }}", "{{ dict(a=1) | xmlattr }}", "\0", "é\u202e",
]  # fmt: skip
PIPELINES = [
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}] * 60}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(.|.)*Z"}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?=(a|b|o|.)*)*Q"}, "behavior": "Removed", "invert": True}},
    {"normalizer": {"type": "Prepend", "prepend": "x" * 100_000}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B",
      "type_id": 1}}], "special_tokens": {"X": {"id": "X", "ids": [2**31 + 7], "tokens": ["X"]}}}},
    {"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}},
    {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 2**33, "pad_type_id": 0,
     "pad_token": "x"}},
]  # fmt: skip


@dataclasses.dataclass
class Case:
    tool: str
    arguments: list[str]
    about: tuple[str, ...]  # a refusal names one of them


class Stock:
    """Whole files that the cases change."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tokenizer(folder / "tok")
        self._model(folder / "model")
        self._run(folder / "run")

    @staticmethod
    def _tokenizer(folder: Path):
        folder.mkdir()
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=280, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        made.train_from_iterator(WORDS, trainer)
        made.save(str(folder / "tokenizer.json"))
        config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": CHATML}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    @staticmethod
    def _model(folder: Path):
        folder.mkdir()
        tensors = {f"model.layers.{i}.{name}.weight": torch.ones(4, 4) for i in range(3) for name in ("a", "b")}
        save_file({**tensors, "model.embed.weight": torch.ones(9, 4)}, folder / "model.safetensors")
        config = {"num_hidden_layers": 3, "hidden_size": 4, "layer_types": ["full_attention"] * 3, "mlp_only_layers": [1]}
        (folder / "config.json").write_text(json.dumps(config))

    @staticmethod
    def _run(folder: Path):
        folder.mkdir()
        lines = [{"step": i, "phase": "train", "loss": 3.0 - i / 9, "tokens_per_s": 9.0 * i, "peak_bytes": 1 << 20} for i in range(6)]
        lines += [{"step": 5, "phase": "eval", "eval.loss": 2.5, "eval.perplexity": 12.2, "targets": 99}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        module = {"module": "a", "role": "mlp", "storage": "float16", "modules": 2, "parameters": 9, "bytes": 18}
        cast = {"place": "a.0.b", "from": "float32", "to": "float16", "phase": "train", "count": 1, "bytes": 8}
        contract = {"modules": [module], "casts": [cast], "memory": {"weights": 18, "peak": 99}}
        (folder / "contract.json").write_text(json.dumps({"result": contract}))
        (folder / "recipe.ini").write_text("[data]\nvalidation = data/validation\n")


def _mutated_records(dice: random.Random) -> list:
    records = [json.loads(json.dumps(record)) for record in dice.choices(RECORDS, k=dice.choice([1, 1, 2, 4]))]
    at = dice.randrange(len(records))
    for _ in range(dice.choice([0, 1, 1, 2])):
        records[at] = mutate_json(records[at], dice)
    return records


def _prepare(stock: Stock, folder: Path, source: str, dice: random.Random, tokenizer: str = "") -> Case:
    flags = dice.choice([[], [], ["--learn", "all"], ["--as-chat"], ["--label-key", "label", "--label-names", "no,yes"],
                         ["--chat-template", "builtin"], ["--special-tokens"], ["--validation-fraction", "0.5"], ["--split-blank"],
                         ["--form", dice.choice(["text", "chat", "alpaca", "preference", "prompt-completion"])], ["--no-append-eos"],
                         ["--teacher-tokenizer", str(stock.folder / "tok")], ["--text-key", "label"]])  # fmt: skip
    tokenizer = tokenizer or str(stock.folder / "tok")
    about = (source, "tok", "--", "out")
    return Case("prepare_data", ["--quiet", "--shard-tokens", "10000", "--tokenizer", tokenizer, "--out", "out", source, *flags], about)


def records(stock: Stock, folder: Path, dice: random.Random) -> Case:
    kind = dice.randrange(8)
    data = "".join(json.dumps(record) + "\n" for record in _mutated_records(dice)).encode()
    if kind == 0:
        data = mutate_bytes(data, dice)
    elif kind == 1:
        data = dice.choice([b'{"text": ' + b"9" * 5000 + b"}", b"[" * 200_000, b'{"a":' * 5000, b'{"text": 1e999}', b"\xff\xfe{}",
                            b'{"text": "\\ud83d"}', b'{"text": NaN}', b"\0" * 1000, b'{"text": "a"}' * 3, b'{"messages": [[[]]]}'])  # fmt: skip
    elif kind == 2 and dice.random() < 0.5:
        data = json.dumps({"text": dice.choice(["a", "\0", "🙂", " ", "\n"]) * 300_000}).encode()
    (folder / "a.jsonl").write_bytes(data)
    return _prepare(stock, folder, "a.jsonl", dice)


def parquet(stock: Stock, folder: Path, dice: random.Random) -> Case:
    path, kind = folder / "a.parquet", dice.randrange(4)
    columns = {"text": ["some text"] * 20, "label": [1] * 20, "messages": [TURNS] * 20, "prompt": ["p"] * 20, "completion": ["c"] * 20}
    table = pyarrow.table({name: columns[name] for name in dice.sample(list(columns), dice.randrange(1, 4))})
    if kind == 0:
        raw = pyarrow.array([b"good", bytes(dice.randrange(256) for _ in range(9))]).view(pyarrow.string())
        table = pyarrow.table({dice.choice(["text", "prompt"]): raw})
    elif kind == 1:
        odd = dice.choice([pyarrow.array([2**62], pyarrow.timestamp("us")), pyarrow.array([[1]]), pyarrow.array([{"a": "b"}]),
                           pyarrow.array(["a"]).dictionary_encode(), pyarrow.array([None]), pyarrow.array([b"\xff"]),
                           pyarrow.array([2**62], pyarrow.duration("us")), pyarrow.array([2**63], pyarrow.uint64())])  # fmt: skip
        table = pyarrow.table({dice.choice(["text", "messages", "chosen", "label", "instruction"]): odd})
    compression = dice.choice(["none", "snappy", "zstd", "gzip"])
    pyarrow.parquet.write_table(table, path, compression=compression, use_dictionary=dice.random() < 0.5)
    if kind > 1:
        path.write_bytes(mutate_bytes(path.read_bytes(), dice))
    return _prepare(stock, folder, "a.parquet", dice)


def _own_tokenizer(stock: Stock, folder: Path) -> Path:
    shutil.copytree(stock.folder / "tok", folder / "tok")
    lines = ({"messages": TURNS}, {"text": "foo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa! größer"})
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "tok"


def tokenizer(stock: Stock, folder: Path, dice: random.Random) -> Case:
    path = _own_tokenizer(stock, folder) / "tokenizer.json"
    kind = dice.randrange(4)
    if kind == 0:
        path.write_bytes(mutate_bytes(path.read_bytes(), dice))
    else:
        content = json.loads(path.read_text())
        if kind == 1:
            content |= dice.choice(PIPELINES)
        elif kind == 2:
            part = dice.choice([key for key, value in content.items() if value])
            content[part] = mutate_json(content[part], dice)
        else:
            content["model"]["vocab"][dice.choice(list(content["model"]["vocab"]))] = dice.choice(EDGES)
        path.write_text(json.dumps(content))
    return _prepare(stock, folder, "a.jsonl", dice, "tok")


def config(stock: Stock, folder: Path, dice: random.Random) -> Case:
    tok = _own_tokenizer(stock, folder)
    content = json.loads((tok / "tokenizer_config.json").read_text())
    content[dice.choice(["eos_token", "pad_token", "chat_template", "mask_token", "bos_token"])] = dice.choice(
        [*EDGES, [{"name": "default", "template": CHATML}], [{"name": "default"}], [7], {"content": 3}])  # fmt: skip
    (tok / "tokenizer_config.json").write_text(json.dumps(content))
    if dice.random() < 0.3:
        mutate_json_file(tok / "tokenizer_config.json", dice)
    elif dice.random() < 0.3:
        (tok / "special_tokens_map.json").write_bytes(dice.choice([b"[]", b"{", b"\xff", b'{"eos_token": 1}', b"[" * 99999]))
    return _prepare(stock, folder, "a.jsonl", dice, "tok")


def template(stock: Stock, folder: Path, dice: random.Random) -> Case:
    tok = _own_tokenizer(stock, folder)
    if dice.random() < 0.3:
        data = mutate_bytes(CHATML.encode(), dice)
    else:
        parts = dice.choices(PARTS, k=dice.choice([1, 2, 4, 8]))
        if dice.random() < 0.5:  # loops that close
            parts = [*parts, *["{% endfor %}"] * sum(part.startswith("{% for") for part in parts)]
        data = "".join(parts).encode("utf-8", "surrogatepass")
    (tok / "chat_template.jinja").write_bytes(data)
    return _prepare(stock, folder, "a.jsonl", random.Random(0), "tok")


class _Payload:
    def __reduce__(self):
        return open, ("ran", "w")


def _pickled(dice: random.Random) -> bytes:
    odd = {"sparse": torch.zeros(2).to_sparse(), "meta": torch.zeros(2, device="meta"), "complex": torch.zeros(2, dtype=torch.complex64),
           "wide": torch.zeros(1).expand(1 << 40), "quantized": torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
           "bool": torch.zeros(2, dtype=torch.bool), "fp8": torch.zeros(2).to(torch.float8_e4m3fn), "empty": torch.zeros(0, 3)}  # fmt: skip
    name = dice.choice(list(odd))
    content = dice.choice([{"a": torch.ones(3, 4), "b": torch.ones(2)}, {"state_dict": {"a": torch.ones(2)}}, {1: torch.ones(1)},
                           [torch.ones(1)], torch.ones(2), {"a": 7}, {"a": odd[name]}, {"a": odd[name]}, {"x" * 100_000: torch.ones(1)}, {},
                           {"a\n\x1b[2J": torch.ones(1)}, {"a": {"b": torch.ones(1)}}])  # fmt: skip
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=dice.random() < 0.7)
    return file.getvalue()


def _bomb() -> bytes:
    """Zeros that a deflated archive expands to."""
    file, out = io.BytesIO(), io.BytesIO()
    torch.save(torch.ones(3, 4), file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, b"\0" * 50_000_000 if "/data/" in name else old.read(name))
    return out.getvalue()


def pickles(stock: Stock, folder: Path, dice: random.Random) -> Case:
    kind = dice.randrange(8)
    if kind == 0:
        data = dice.choice([b"", b"hello", b"PK\x03\x04" + b"\0" * 99, pickle.dumps(_Payload()), b"\x80\x02" + b"(" * 1_000_000,
                            b"\x80\x02" + b"]" * 100_000 + b".", pickle.dumps({"a": b"x" * 9}), b"\x80\x04\x8e" + b"\xff" * 8])  # fmt: skip
    elif kind < 4:
        data = mutate_bytes(_pickled(dice), dice)
    else:
        data = _pickled(dice)
    (folder / "pytorch_model.bin").write_bytes(data)
    if kind == 7:
        value = dice.choice([[], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x"}}, {"weight_map": {}},
                             {"weight_map": {"a": "pytorch_model.bin", "b": "gone.bin"}}, {"weight_map": {"a": "pytorch_model.bin"}}])  # fmt: skip
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(value))
    return Case("convert_pickle", [dice.choice([".", "."]), *dice.choice([[], ["--out", "out"]])], ("pytorch_model", "gone.bin", "model"))


def tensors(stock: Stock, folder: Path, dice: random.Random) -> Case:
    mask = torch.ones(6, 5, dtype=torch.long)
    whole = {"input_ids": torch.full((6, 5), 7), "attention_mask": mask, "labels": torch.arange(6) % 2}
    for name, value in whole.items():
        torch.save(value, folder / f"{name}.pt")
    name, kind = dice.choice(list(whole)), dice.randrange(4)
    if kind == 0:
        data = dice.choice([b"", b"hello", pickle.dumps(_Payload()), b"\x80\x02" + b"]" * 100_000 + b".", b"\x80\x04\x8e" + b"\xff" * 8])
    elif kind == 1:
        data = mutate_bytes((folder / f"{name}.pt").read_bytes(), dice)
    elif kind == 2:
        data = _bomb()
    else:
        data = _pickled(dice)
    (folder / f"{name}.pt").write_bytes(data)
    flags = dice.choice([[], ["--validation-fraction", "0.5"], ["--label-names", "a,b"], ["--max-tokens", "12"]])
    return Case("prepare_data", ["--quiet", "--from-pt", ".", "--tokenizer", str(stock.folder / "tok"), "--out", "out", *flags],
                (*(f"{name}.pt" for name in whole), "out", "--"))  # fmt: skip


def classifier(stock: Stock, folder: Path, dice: random.Random) -> Case:
    shutil.copytree(stock.folder / "model", folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": dice.choice(["bert", "distilbert"]), "num_labels": 2}))
    if dice.random() < 0.7:
        mutate_json_file(config, dice)
    labels = dice.choice(["a,b", "a,b", "a,a", "", "a", "\x1b[2J,b", "größer,日本", ",".join(map(str, range(9999))), "a" * 300 + ",b"])
    return Case("as_classifier", ["model", "made", f"--labels={labels}"], ("model", "--labels", "config.json"))


def snippets(stock: Stock, folder: Path, dice: random.Random) -> Case:
    torn = [b'x = """', b"(" * 50_000, b"\0" * 99, b"\\", b"if x:\n  y\n z\n", b"\xff\xfe"]
    for name in ("alpha", "beta"):
        (folder / "lib" / name).mkdir(parents=True)
        for file in "abc":
            data = "".join(f"{file}{i} = {i}  # {name}\n" for i in range(30)).encode()
            if dice.random() < 0.3:
                data = dice.choice([mutate_bytes(data, dice), *torn])
            (folder / "lib" / name / f"{file}.py").write_bytes(data)
    packages = dice.choice(["alpha,beta", "alpha,beta", "alpha", "alpha,gone", "alpha,..", "alpha,alpha", ""])
    flags = dice.choice([[], ["--lines=1"], ["--lines=999"], ["--test-share=0.9"], ["--most-train=1"], ["--stride=7"]])
    return Case("label_snippets", ["--root=lib", "--out=out", f"--packages={packages}", *flags], ("lib", "--packages"))


def layers(stock: Stock, folder: Path, dice: random.Random) -> Case:
    shutil.copytree(stock.folder / "model", folder / "model")
    if dice.random() < 0.5:
        mutate_json_file(folder / "model" / "config.json", dice)
    else:
        mutate_safetensors(folder / "model" / "model.safetensors", dice)
    chosen = dice.choice(["0", "0,2", "2,2,1", "3", "", "9" * 5000, "-1", "0,,1", "０"])
    return Case("take_layers", ["model", "taken", f"--layers={chosen}"], ("model", "--layers", "config.json"))


def report(stock: Stock, folder: Path, dice: random.Random) -> Case:
    shutil.copytree(stock.folder / "run", folder / "run")
    which = dice.choice(["metrics.jsonl", "metrics.jsonl", "contract.json", "recipe.ini"])
    path = folder / "run" / which
    if which == "metrics.jsonl" and dice.random() < 0.7:
        lines = [mutate_json(json.loads(line), dice) if dice.random() < 0.4 else json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif which == "contract.json" and dice.random() < 0.8:
        mutate_json_file(path, dice)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), dice))
    return Case("report", ["run", *dice.choice([[], ["--table"]])], ("run", "metrics", "contract"))


def budgets(stock: Stock, folder: Path, dice: random.Random) -> Case:
    measured = {"rows": 4, "targets": 92, "kl": 0.02, "kl_low": 0.01, "kl_high": 0.03, "float_perplexity": 97.5, "perplexity": 99.1}
    points = [{"asked": f"{bits} bits", "bytes": 1000 * bits, "predicted_loss": 0.1 / bits, "estimate": {"compression_ratio": 32 / bits},
               "measured": measured, "modules": {"layers.0.up_proj": {"format": "int4"}}} for bits in (4, 5, 6)]  # fmt: skip
    (folder / "curve.json").write_text(json.dumps({"result": {"curve": points, "too_small": ["3 bits are too few"]}}))
    mutate_json_file(folder / "curve.json", dice)
    return Case("report_budgets", ["curve.json"], ("curve.json",))


def _result(folder: Path, name: str, result: dict, dice: random.Random) -> None:
    path = folder / f"{name}.json"
    for _ in range(dice.choice([0, 1, 3])):
        result = mutate_json(result, dice)
    path.write_text(json.dumps(dice.choice([result, {"result": result}])))
    if dice.random() < 0.2:
        path.write_bytes(mutate_bytes(path.read_bytes(), dice))
    elif dice.random() < 0.5:
        mutate_json_file(path, dice)


def sweep(stock: Stock, folder: Path, dice: random.Random) -> Case:
    _result(folder, "sweep", report_examples.sweep(layers=1), dice)
    return Case("report_sweep", ["sweep.json"], ("sweep.json",))


def profile(stock: Stock, folder: Path, dice: random.Random) -> Case:
    _result(folder, "profile", report_examples.profile(joules=dice.random() < 0.5), dice)
    return Case("report_profile", ["profile.json"], ("profile.json",))


def pareto(stock: Stock, folder: Path, dice: random.Random) -> Case:
    made = {"sweep": report_examples.sweep(layers=1), "profile": report_examples.profile(), "curve": report_examples.curve(dice.random() < 0.5)}
    names = dice.sample(list(made), dice.randrange(1, 4))
    for name in names:
        _result(folder, name, made[name], dice)
    files = [f"{name}.json" for name in names]
    return Case(dice.choice(["report_pareto", "report"]), [*files, "--output", "page.html"], tuple(files))


def similarity(stock: Stock, folder: Path, dice: random.Random) -> Case:
    save_file({"pooled": torch.ones(4, 6)}, folder / "in.safetensors")
    mutate_safetensors(folder / "in.safetensors", dice)
    return Case("sentence_similarity", ["compare", "in.safetensors"], ("in.safetensors",))


def _original_resnet_bk() -> dict[str, torch.Tensor]:
    """A state_dict by the names of the public one: two layers with two experts each."""
    width, length = 4, 5
    found = {"token_embedding.weight": torch.ones(9, width), "position_embedding.weight": torch.ones(length, width),
             "lm_head.weight": torch.ones(9, width), "lm_head.bias": torch.ones(9),
             **{f"layer_norm_final.{one}": torch.ones(width) for one in ("weight", "bias")}}  # fmt: skip

    def linear(name: str, rows: int, columns: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = torch.ones(rows, columns), torch.ones(rows)

    for i in range(2):
        bk = f"blocks.{i}.bk_layer"
        found |= {f"blocks.{i}.layer_norm.{one}": torch.ones(width) for one in ("weight", "bias")}
        linear(f"{bk}.v_proj", 1, width)
        linear(f"{bk}.output_proj", width, 2)
        linear(f"{bk}.moe_ffn.gating_network", 2, width)
        for k in range(2):
            linear(f"{bk}.moe_ffn.experts.{k}.0", 2 * width, width)
            linear(f"{bk}.moe_ffn.experts.{k}.3", width, 2 * width)
        found |= {f"{bk}.bk_scale": torch.tensor(1.0), f"{bk}.z": torch.tensor(1j), f"{bk}.h0_diag_base": torch.full((1, length), -2.0),
                  f"{bk}.h0_super_base": torch.ones(1, length - 1), f"{bk}.h0_sub_base": torch.ones(1, length - 1)}  # fmt: skip
    return found


def _strange_resnet_bk(state: dict, dice: random.Random) -> dict:
    """Names and values that a header or a pickle may well hold."""
    odd = [torch.ones(0), torch.ones(0, 4), torch.ones(4, 0), torch.tensor(2), torch.ones(1, 1, 1, 1), torch.zeros(4, 4, dtype=torch.bool),
           torch.ones(9, 4, dtype=torch.int8), torch.ones(4, dtype=torch.complex64), torch.tensor(complex("nan+infj")), torch.tensor(float("nan")),
           torch.tensor(-1e30), torch.tensor(1e-320, dtype=torch.float64), torch.tensor(-1j), torch.tensor(0j), torch.ones(9, 4, dtype=torch.bfloat16)]  # fmt: skip
    names = ["blocks.{}.bk_layer.z", "blocks.{}.layer_norm.weight", "blocks.{}.bk_layer.moe_ffn.experts.{}.2.weight", "{}.{}.{}", "x.{}",
             "blocks.{}.bk_layer.gamma", "blocks.{}.bk_layer.epsilon_param", "", "a\n\x1b[2J", "größer\u202e", "x" * 3000, "model.norm.weight",
             "diagonal.{}", "z.{}"]  # fmt: skip
    numbers = ["0", "2", "999999999", "999999999", "999999999", "9999999999999", "00", "-1", "٣"]
    for _ in range(dice.choice([1, 1, 2, 5])):
        name, kind = dice.choice(sorted(state)), dice.randrange(5)
        if kind == 0:
            del state[name]
        elif kind == 1:
            state[name] = dice.choice(odd).clone()
        elif kind == 2:
            state[dice.choice(names).replace("{}", dice.choice(numbers))] = state.pop(name) if dice.random() < 0.5 else dice.choice(odd).clone()
        elif kind == 3:
            state[name] = state[name].flatten()[:1].clone()
        else:
            state[name] = state[name] * dice.choice([0.0, -1.0, 1e30, float("inf"), float("nan")])
    return state


def resnet_bk(stock: Stock, folder: Path, dice: random.Random) -> Case:
    state, kind, name = _original_resnet_bk(), dice.randrange(8), dice.choice(["model.safetensors", "model.pt"])
    if kind > 2:
        state = _strange_resnet_bk(state, dice)
    if name == "model.safetensors":
        save_file({one: tensor.contiguous() for one, tensor in state.items()}, folder / name)
        if kind == 0:
            mutate_safetensors(folder / name, dice)
    else:
        torch.save(dice.choice([state, state, {"state_dict": state, "step": 3}, {"model": state}]), folder / name)
        if kind == 0:
            (folder / name).write_bytes(mutate_bytes((folder / name).read_bytes(), dice))
        elif kind == 1:
            (folder / name).write_bytes(dice.choice([b"", b"PK\x03\x04" + b"\0" * 99, pickle.dumps(_Payload()), _bomb(), _pickled(dice)]))
    flags, experts = dice.choice([[], [], ["--causal"], ["--drop", "blocks.{}.bk_layer.z"]]), "2"
    if kind == 2:
        experts = dice.choice(["1", "2", "2", "0", "-1", "9" * 400, "99999999999"])
        flags = dice.choice([["--clamp=nan"], ["--clamp=1e-320"], ["--drop", "{}" * 3000], ["--drop", ""], ["--map", "=" * 99],
                             ["--map", "(a+)+$=lm_head.bias"], ["--map", "x.{}=z.{}"], ["--map", f"{'{}' * 2000}=model.norm.weight"], ["--map", "lm_head.weight=lm_head.weight\n"],
                             ["--map", "{}.{}.{}=model.layers.{}.mlp.experts.{}.up_proj.weight"]])  # fmt: skip
    return Case("import_resnet_bk", [name, "out", f"--experts-per-token={experts}", *flags], (name, "--", "out"))


MAKERS = {"records": records, "parquet": parquet, "tokenizer": tokenizer, "config": config, "template": template, "pickle": pickles,
          "tensors": tensors, "layers": layers, "classifier": classifier, "report": report, "budgets": budgets, "sweep": sweep,
          "profile": profile, "pareto": pareto, "snippets": snippets, "similarity": similarity, "resnet_bk": resnet_bk}  # fmt: skip


def made(stock: Stock, kind: str, seed: int, folder: Path) -> Case:
    return MAKERS[kind](stock, folder, random.Random(f"{kind} {seed}"))
