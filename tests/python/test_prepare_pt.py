"""tools/prepare_data.py --from-pt: rows that torch.save wrote become shards; nothing that stands in their pickles is run."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
import warm_python
from limbeck_runner import Limbeck
from safetensors.numpy import load_file
from test_prepare_data import TOOL, bytes_of, byte_level, read

ROWS, WIDTH, VOCABULARY = 12, 9, 280
NAMES = ("input_ids", "attention_mask", "labels")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json", VOCABULARY)


def tensors(rows=ROWS, padding="right"):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, VOCABULARY, (rows, WIDTH), generator=generator)
    lengths = torch.randint(2, WIDTH + 1, (rows,), generator=generator)
    place = torch.arange(WIDTH)
    mask = place < lengths[:, None] if padding == "right" else place >= WIDTH - lengths[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long(), "labels": torch.arange(rows) % 4}


def put(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        torch.save(value, folder / f"{name}.pt")
    return folder


def prepare(folder, tokenizer, out, *more):
    return warm_python.completed([TOOL, "--from-pt", folder, "--tokenizer", tokenizer, "--out", out, *more], timeout=120)


def refused(folder, tokenizer, out, *more, code=3):
    done = prepare(folder, tokenizer, out, *more)
    assert done.returncode == code and done.stderr.count("\n") == 1 and done.stderr.startswith("prepare_data: "), done
    assert not list(out.rglob("*.safetensors")) and not list(out.rglob("manifest.json"))
    return done.stderr


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_rows_come_back_as_they_were(tokenizer, tmp_path, padding, dtype):
    wanted = tensors(padding=padding)
    done = prepare(put(tmp_path / "in", {name: value.to(dtype) for name, value in wanted.items()}), tokenizer, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest, documents = read(tmp_path / "out")
    assert manifest["classes"] == 4 and len(documents) == ROWS
    for row, document in enumerate(documents):
        ids = wanted["input_ids"][row][wanted["attention_mask"][row] == 1]
        assert document["ids"].tolist() == ids.tolist() and document["class"] == int(wanted["labels"][row])
        assert document["mask"].all()
    Limbeck().run("verify", str(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()


def test_a_mask_of_truths_unlabelled_rows_and_names_of_classes(tokenizer, tmp_path):
    values = tensors()
    values["attention_mask"] = values["attention_mask"].bool()
    values["labels"][3] = -100
    folder = put(tmp_path / "in", values)
    done = prepare(folder, tokenizer, tmp_path / "out", "--label-names=a,b,c,d,e")
    assert done.returncode == 0, done.stderr
    manifest, documents = read(tmp_path / "out")
    assert manifest["classes"] == 5 and documents[3]["class"] == -100
    again = prepare(folder, tokenizer, tmp_path / "again", "--label-names=a,b,c,d,e")
    assert again.returncode == 0 and bytes_of(tmp_path / "out") == bytes_of(tmp_path / "again")


def test_a_share_is_held_out_by_content(tokenizer, tmp_path):
    values = tensors(rows=200)
    done = prepare(put(tmp_path / "in", values), tokenizer, tmp_path / "out", "--validation-fraction=0.25", "--shard-tokens=300")
    assert done.returncode == 0, done.stderr
    parts = {name: read(tmp_path / "out" / name)[1] for name in ("train", "validation")}
    assert sum(map(len, parts.values())) == 200 and 25 <= len(parts["validation"]) <= 75
    assert len(list((tmp_path / "out" / "train").glob("shard-*"))) > 1
    known = {tuple(document["ids"]) for document in parts["train"]}
    assert not known & {tuple(document["ids"]) for document in parts["validation"]}
    few = prepare(tmp_path / "in", tokenizer, tmp_path / "few", "--max-documents=7", "--max-tokens=1000")
    assert few.returncode == 0 and read(tmp_path / "few")[0]["documents"] == 7


def test_limbeck_trains_on_it(tokenizer, tmp_path):
    assert prepare(put(tmp_path / "in", tensors()), tokenizer, tmp_path / "data").returncode == 0
    (tmp_path / "model").mkdir()
    config = {"architectures": ["DistilBertForSequenceClassification"], "model_type": "distilbert", "vocab_size": VOCABULARY, "dim": 16,
              "hidden_dim": 24, "n_heads": 2, "n_layers": 1, "max_position_embeddings": 16, "num_labels": 4}  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "recipe.ini"
    recipe.write_text("[student]\nmodel = model\ninit = random\ndtype = float32\n[data]\ntrain = data\nvalidation = data\n"
                      "packing = padded\nbatch_size = 4\nsequence_length = 9\n[objective]\nalpha = 0\n[train]\nsteps = 2 steps\n")
    Limbeck().run("train", str(recipe), f"--run={tmp_path / 'run'}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [evaluated] = [line for line in lines if line["phase"] == "eval"]
    assert evaluated["targets"] == ROWS and 0 <= evaluated["accuracy"] <= 1 and 0 <= evaluated["macro_f1"] <= 1


def changed(name, value):
    return {**tensors(), name: value}


def with_id(row, at, id):
    ids = tensors()["input_ids"]
    ids[row, at] = id
    return changed("input_ids", ids)


def with_mask(row, values):
    mask = tensors()["attention_mask"]
    mask[row] = torch.tensor(values)
    return changed("attention_mask", mask)


@pytest.mark.parametrize(
    "values, said",
    [
        (changed("input_ids", torch.ones(ROWS, WIDTH)), "input_ids.pt: holds float32, wanted a dense tensor of whole numbers"),
        (changed("input_ids", torch.ones(ROWS, dtype=torch.long)), "input_ids.pt: has shape [12], wanted [rows, tokens]"),
        (changed("labels", torch.ones(ROWS, 2, dtype=torch.long)), "labels.pt: has shape [12, 2], wanted [rows], one class a row"),
        (changed("labels", torch.zeros(0, dtype=torch.long)), "labels.pt: has shape [0]"),
        (changed("labels", torch.zeros(ROWS - 1, dtype=torch.long)), "labels.pt: 11 classes, wanted one for each of 12 rows"),
        (changed("labels", torch.full((ROWS,), -100)), "labels.pt: none of 12 rows has a class"),
        (changed("labels", torch.arange(ROWS) - 2), "labels.pt: row 0 is class -2, wanted a number from 0 on, or -100 for none"),
        (changed("attention_mask", torch.ones(ROWS, WIDTH + 1, dtype=torch.long)), "attention_mask.pt: has shape [12, 10], wanted [12, 9]"),
        (with_mask(5, [1, 1, 0, 1, 0, 0, 0, 0, 0]), "row 5 has 3 ones from token 0 to 3, with zeros between"),
        (with_mask(5, [0] * 9), "attention_mask.pt: row 5 has no 1, wanted one stretch of ones"),
        (with_mask(5, [2] + [1] * 8), "attention_mask.pt: row 5, token 0 is 2, wanted 0 or 1"),
        (with_id(4, 0, VOCABULARY + 5), f"input_ids.pt: row 4, token 0 is {VOCABULARY + 5}, wanted ids below"),
        (with_id(4, 0, -1), "input_ids.pt: row 4, token 0 is -1"),
        (changed("input_ids", {"input_ids": torch.ones(2, 2)}), "input_ids.pt: holds dict, wanted one tensor"),
        (changed("input_ids", torch.ones(ROWS, WIDTH, dtype=torch.long).to_sparse()), "input_ids.pt: holds int64, sparse, wanted a dense"),
        (changed("input_ids", torch.zeros(1, 1, dtype=torch.long).expand(1 << 20, 1 << 20)), "repeats the few values that are stored"),
        (changed("input_ids", torch.empty(4, 4, dtype=torch.long, device="meta")), "input_ids.pt: holds int64"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(tokenizer, tmp_path, values, said):
    line = refused(put(tmp_path / "in", values), tokenizer, tmp_path / "out")
    assert said in line, line


class Payload:
    """Whoever reads it by pickle's own rules makes the file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


class Evaluates(Payload):
    def __reduce__(self):
        return eval, (f"open({self.target!r}, 'w')",)


def archive(content: bytes, name="archive/data.pkl", more=()):
    """A file as torch.save writes it, with this pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        file.writestr(name, content)
        file.writestr("archive/version", "3\n")
        for other, data in more:
            file.writestr(other, data)
    return out.getvalue()


def rebuilding(size, stride=1):
    """A pickle that rebuilds a tensor of a size that its storage does not have."""
    file = io.BytesIO()
    torch.save(torch.zeros(4, 4, dtype=torch.long), file)
    with zipfile.ZipFile(file) as old:
        names = {name.split("/", 1)[1]: old.read(name) for name in old.namelist()}
    return archive(names["data.pkl"].replace(b"K\x04K\x04\x86", b"J" + size.to_bytes(4, "little") + b"K\x04\x86"),
                   more=[("archive/data/0", names["data/0"]), ("archive/byteorder", b"little")])  # fmt: skip


HOSTILE = {
    "a plain pickle that opens a file": lambda target: pickle.dumps(Payload(target)),
    "the same of protocol 0": lambda target: pickle.dumps(Evaluates(target), protocol=0),
    "inside of torch's archive": lambda target: archive(pickle.dumps(Payload(target), protocol=2)),
    "eval inside of torch's archive": lambda target: archive(pickle.dumps(Evaluates(target), protocol=2)),
    "a tensor, and behind it a payload": lambda target: archive(pickle.dumps([torch.Size([1]), Payload(target)], protocol=2)),
    "os.system by name": lambda target: f"cposix\nsystem\n(S'touch {target}'\ntR.".encode(),
    "os.system by name, in an archive": lambda target: archive(f"cposix\nsystem\n(S'touch {target}'\ntR.".encode()),
    "nothing": lambda target: b"",
    "a text": lambda target: b"input_ids, please",
    "an archive of nothing": lambda target: b"PK\x05\x06" + b"\0" * 18,
    "the beginning of an archive": lambda target: b"PK\x03\x04" + b"\0" * 99,
    "a deep pickle": lambda target: b"\x80\x02" + b"]" * 200_000 + b".",
    "a million marks": lambda target: b"\x80\x02" + b"(" * 1_000_000,
    "a length of 2^63": lambda target: b"\x80\x04\x8e" + b"\xff" * 8,
    "rows beyond the storage": lambda target: rebuilding(1 << 30),
}


@pytest.mark.parametrize("kind, name", [(kind, NAMES[number % len(NAMES)]) for number, kind in enumerate(HOSTILE)])
def test_hostile_pickles_are_refused_and_run_nothing(tokenizer, tmp_path, kind, name):
    folder, target = put(tmp_path / "in", tensors()), tmp_path / "ran"
    (folder / f"{name}.pt").write_bytes(HOSTILE[kind](target))
    line = refused(folder, tokenizer, tmp_path / "out")
    assert f"{name}.pt: " in line, line
    assert not target.exists(), f"{kind} was run"


def test_the_payloads_do_run_where_pickle_itself_reads_them(tmp_path):
    """Or the test above would see nothing."""
    for kind in ("a plain pickle that opens a file", "the same of protocol 0", "os.system by name"):
        target = tmp_path / kind.replace(" ", "-")
        pickle.loads(HOSTILE[kind](target))
        assert target.exists(), kind


def test_an_archive_that_swells_is_refused(tokenizer, tmp_path):
    """Half a gigabyte of zeros, deflated to half a megabyte: more memory than a file of its size may take."""
    folder = put(tmp_path / "in", tensors())
    file, out = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(4, 4, dtype=torch.long), file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, b"\0" * (1 << 29) if "/data/" in name else old.read(name))
    (folder / "input_ids.pt").write_bytes(out.getvalue())
    assert "input_ids.pt: " in refused(folder, tokenizer, tmp_path / "out")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--label-key=x"], "--from-pt has tokens and classes already"),
        (["--teacher-tokenizer=x"], "--from-pt has tokens and classes already"),
        (["text.txt"], "texts, --from-python-stdlib and --from-pt: choose one of them"),
        (["--from-python-stdlib"], "choose one of them"),
    ],
)
def test_options_that_do_not_go_with_it(tokenizer, tmp_path, flags, said):
    assert said in refused(put(tmp_path / "in", tensors()), tokenizer, tmp_path / "out", *flags, code=2)


def test_what_is_not_there(tokenizer, tmp_path):
    assert "--from-pt" in refused(tmp_path / "gone", tokenizer, tmp_path / "out", code=2)
    folder = put(tmp_path / "in", tensors())
    (folder / "labels.pt").unlink()
    assert "labels.pt: no such file, wanted input_ids.pt, attention_mask.pt, labels.pt" in refused(folder, tokenizer, tmp_path / "out", code=2)


def test_shards_hold_no_pickle(tokenizer, tmp_path):
    assert prepare(put(tmp_path / "in", tensors()), tokenizer, tmp_path / "out").returncode == 0
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in {".pt", ".pkl", ".bin"}]
    [shard] = (tmp_path / "out").glob("*.safetensors")
    assert load_file(shard)["classes"].dtype == np.int64
