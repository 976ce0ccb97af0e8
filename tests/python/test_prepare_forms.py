"""Texts to learn from in the forms that others keep them in, and files of strangers: one line, never a traceback."""
import json
import pickle

import pytest
import tokenizers
import warm_python
from limbeck_runner import REPOSITORY as SOURCE
from test_command_line import limbeck
from test_prepare_data import CHATML, bpe, hub_folder, prepare, read, refused, target_runs, write_lines  # noqa: F401

ASKED, SAID = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}
MORE, WRONG = {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "7."}
RIGHT = {"role": "assistant", "content": "6."}
END = "<|endoftext|>"

# One record, what of it is learned, what it is called.
FORMS = {
    "texts": ({"prompt": "2+2? ", "completion": "It is 4."}, ["It is 4." + END], "prompt and completion"),
    "messages": ({"prompt": [ASKED, SAID, MORE], "completion": [RIGHT]}, [" 6." + END], "prompt and completion"),
    "alpaca": ({"instruction": "Add.", "input": "2+2", "output": "4."}, [" 4." + END], "instruction and output"),
    "alpaca without input": ({"instruction": "2+2?", "input": "", "output": "4."}, [" 4." + END], "instruction and output"),
    "preferred text": ({"prompt": "2+2? ", "chosen": "It is 4.", "rejected": "5"}, ["It is 4." + END], "chosen"),
    "preferred whole text": ({"prompt": "2+2? ", "chosen": "2+2? It is 4.", "rejected": "5"}, ["It is 4." + END], "chosen"),
    "preferred turn": ({"prompt": [ASKED, SAID, MORE], "chosen": [RIGHT], "rejected": [WRONG]}, [" 6." + END], "chosen"),
    "preferred chat": ({"chosen": [ASKED, SAID, MORE, RIGHT], "rejected": [ASKED, SAID, MORE, WRONG]}, [" 6." + END], "chosen"),
    "preferred chat of a text": ({"prompt": "2+2?", "chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]}, [" It is 4." + END],
                                 "chosen"),
    "share gpt": ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 4."}]},
                  [" It is 4." + END], "conversations"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_others(tmp_path, bpe, name):  # noqa: F811
    record, learned, form = FORMS[name]
    lines = write_lines(tmp_path / "lines.jsonl", [record])
    said = prepare("--tokenizer", bpe, "--out", tmp_path / "out", lines)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    [document] = read(tmp_path / "out")[1]
    assert target_runs(document, tokenizer) == learned
    text = tokenizer.decode(document["ids"].tolist(), skip_special_tokens=False)
    assert "2+2" in text  # the question is there
    assert f"1 of {form}; learned: the answers alone" in said.stderr
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "lines.parquet")
    prepare("--tokenizer", bpe, "--out", tmp_path / "parquet", tmp_path / "lines.parquet")
    [again] = read(tmp_path / "parquet")[1]
    assert again["ids"].tolist() == document["ids"].tolist() and again["mask"].tolist() == document["mask"].tolist()
    prepare("--tokenizer", bpe, "--learn", "all", "--out", tmp_path / "all", lines)
    [whole] = read(tmp_path / "all")[1]
    assert whole["ids"].tolist() == document["ids"].tolist() and whole["mask"].all()


def test_no_advice_drops_the_question(tmp_path, bpe):  # noqa: F811
    lines = write_lines(tmp_path / "lines.jsonl", [{"question": "2+2?", "answer": "4"}])
    message = refused("--tokenizer", bpe, "--out", tmp_path / "out", lines, code=3)
    assert "--text-key" not in message and "'prompt' with 'completion'" in message
    lines = write_lines(tmp_path / "lines.jsonl", [{"body": "a text"}])
    assert "name yours with --text-key" in refused("--tokenizer", bpe, "--out", tmp_path / "out", lines, code=3)


HOSTILE_TEMPLATES = {
    "memory": ("{% set x = 'a' * 6000000000 %}{{ x }}", "more than 1 GiB of memory"),
    "output": ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "million characters"),
    "time": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 5 s of processor time"),
    "syntax": ("{% for %}", "cannot be used: TemplateSyntaxError"),
    "a fault": ("{{ messages[0].content / 2 }}", "TypeError"),
    "no filter": ("{{ messages | nothing }}", "TemplateAssertionError"),
}


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_a_strangers_template_neither_hangs_nor_grows(tmp_path, bpe, name):  # noqa: F811
    template, message = HOSTILE_TEMPLATES[name]
    folder = hub_folder(tmp_path / "hub", bpe, template)
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID]}])
    said = refused("--tokenizer", folder, "--out", tmp_path / "out", lines, code=3)
    assert message in said and "use --chat-template builtin" in said
    assert not (tmp_path / "out").exists()  # made for nothing


def test_chats_of_a_template_end_with_their_end(tmp_path, bpe):  # noqa: F811
    folder = hub_folder(tmp_path / "hub", bpe, CHATML)
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID, MORE, RIGHT]}] * 3)
    prepare("--tokenizer", folder, "--out", tmp_path / "out", lines)
    said = limbeck("verify", tmp_path / "out")
    assert "do not end" not in said.stdout + said.stderr
    manifest, documents = read(tmp_path / "out")
    assert all(document["ids"][-1] == manifest["tokenizer"]["end_of_sequence"] for document in documents)


BAD = {
    "from.jsonl": (b'{"conversations": [{"from": ["human"], "value": "a"}]}\n', "from.jsonl:1: message 0: role ['human']"),
    "role.jsonl": (b'{"messages": [{"role": {"a": 1}, "content": "a"}]}\n', "role.jsonl:1: message 0: role {'a': 1}"),
    "huge.jsonl": (b'{"text": ' + b"1" * 5000 + b"}\n", "huge.jsonl:1: no JSON"),
    "completion.jsonl": (b'{"prompt": 1, "completion": "a"}\n', "completion.jsonl:1: 'prompt' is int, wanted a text"),
    "chosen.jsonl": (b'{"chosen": {"a": 1}}\n', "chosen.jsonl:1: 'chosen' is an object, wanted a text or a list"),
    "output.jsonl": (b'{"instruction": "a", "output": 3}\n', "output.jsonl:1: 'output' is int"),
    "cut.parquet": (b"PAR1" + b"\0" * 40 + b"PAR1", "cut.parquet: no Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_of_strangers(tmp_path, bpe, name):  # noqa: F811
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    assert message in refused("--tokenizer", bpe, "--out", tmp_path / "out", tmp_path / name, code=3)
    assert not (tmp_path / "out").exists()


def test_parquet_that_lies(tmp_path, bpe):  # noqa: F811
    import pyarrow
    import pyarrow.parquet
    raw = pyarrow.array([b"\xff\xfe"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "utf8.parquet")
    assert "utf8.parquet: row 0: byte 0 of a text is not UTF-8" in refused(
        "--tokenizer", bpe, "--out", tmp_path / "out", tmp_path / "utf8.parquet", code=3)
    good = tmp_path / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text " * 50] * 50}), good)
    data = bytearray(good.read_bytes())
    for at in range(4, len(data) - 8, max(1, len(data) // 7)):
        cut = bytearray(data)
        cut[at] ^= 0xFF
        (tmp_path / "flipped.parquet").write_bytes(cut)
        ended = warm_python.completed([SOURCE / "tools/prepare_data.py", "--tokenizer", bpe, "--overwrite", "--out",
                                       tmp_path / "flipped", tmp_path / "flipped.parquet"])  # fmt: skip
        assert ended.returncode in (0, 3) and "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == 0 or "flipped.parquet" in ended.stderr


def test_ids_above_int32(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["b"] = 2**31 + 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "a.txt").write_text("b")
    message = refused("--tokenizer", tmp_path / "tokenizer.json", "--no-append-eos", "--out", tmp_path / "out",
                      tmp_path / "a.txt", code=3)
    assert "tokenizer.json: holds id 2147483653 ('b'), wanted ids below 2" in message


def test_one_text_file_is_one_document(tmp_path, bpe):  # noqa: F811
    (tmp_path / "book.txt").write_text("A line.\n\nAnother.\n")
    message = refused("--tokenizer", bpe, "--validation-fraction", "0.5", "--out", tmp_path / "out", tmp_path / "book.txt", code=3)
    assert "--split-blank" in message and not (tmp_path / "out").exists()


def test_pickles_that_are_none(tmp_path):
    """Every bad file is one line; what could run code does not."""
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return open, (str(ran), "w")

    import torch
    files = {"payload.bin": pickle.dumps(Payload()), "empty.bin": b"", "text.bin": b"hello", "zip.bin": b"PK\x03\x04" + b"\0" * 99}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"a": torch.zeros(2).to_sparse()}, tmp_path / "sparse.bin")
    torch.save({1: torch.zeros(2)}, tmp_path / "number.bin")
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-100])
    for index in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        folder = tmp_path / f"index-{len(index)}"
        folder.mkdir(exist_ok=True)
        (folder / "pytorch_model.bin.index.json").write_text(index)
    wrong = [path for path in tmp_path.iterdir() if path.suffix == ".bin" or path.name.startswith("index-")]
    assert len(wrong) >= 11
    driver = ("import runpy, safetensors.torch, sys\nfor path in sys.argv[2:]:\n  sys.argv[1:] = [path]\n"
              "  try: runpy.run_path(script, run_name='__main__')\n  except SystemExit as end: print(path, end.code)\n")
    driver = f"script = {str(SOURCE / 'tools/convert_pickle.py')!r}\n" + driver.replace("sys.argv[2:]", "list(sys.argv[1:])")
    ended = warm_python.completed(["-c", driver, *wrong])
    assert "Traceback" not in ended.stderr, ended.stderr
    assert [line.rsplit(" ", 1)[1] for line in ended.stdout.splitlines()] == ["4"] * len(wrong), ended.stdout + ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("convert_pickle: ")]
    assert len(said) == len(wrong) and all(str(tmp_path) in line for line in said), ended.stderr
    assert not ran.exists()


MORE_FORMS = {  # a record, options, what of it is learned, what it is called
    "other names": ({"question": "2+2? ", "answer": "4"}, ["--prompt-key", "question", "--completion-key", "answer"], ["4" + END],
                    "prompt and completion"),
    "as a chat": ({"prompt": "2+2?", "completion": "4"}, ["--as-chat"], [" 4" + END], "prompt and completion"),
    "with a system text": ({"system": "Be brief.", "prompt": "2+2?", "completion": "4"}, [], [" 4" + END], "prompt and completion"),
    "common beginning": ({"chosen": "Q: 2+2? A: 4", "rejected": "Q: 2+2? A: 5"}, [], [" 4" + END], "chosen"),
    "history": ({"instruction": "And 3+3?", "output": "6.", "history": [["2+2?", "4."]], "system": "Be brief."}, [], [" 6." + END],
                "instruction and output"),
    "a form that is named": ({"text": "all of it", "instruction": "2+2?", "output": "4."}, ["--form", "alpaca"], [" 4." + END],
                             "instruction and output"),
    "a blank of the prompt": ({"prompt": "2+2? ", "completion": "brown"}, [], ["brown" + END], "prompt and completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE_FORMS)
def test_forms_by_options(tmp_path, bpe, name):  # noqa: F811
    record, flags, learned, form = MORE_FORMS[name]
    lines = write_lines(tmp_path / "lines.jsonl", [record])
    said = prepare("--tokenizer", bpe, "--out", tmp_path / "out", *flags, lines)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    [document] = read(tmp_path / "out")[1]
    assert [text.removeprefix(" " * (name == "a blank of the prompt")) for text in target_runs(document, tokenizer)] == learned
    text = tokenizer.decode(document["ids"].tolist(), skip_special_tokens=False)
    assert all(value in text for key, value in record.items() if isinstance(value, str) and key not in ("text", "rejected"))
    assert f"1 of {form}; learned: the answers alone" in said.stderr


def test_what_a_user_should_know_is_said(tmp_path, bpe):  # noqa: F811
    lines = write_lines(tmp_path / "lines.jsonl", [{"text": "all", "instruction": "a", "output": "b"}, {"prompt": "ab", "completion": "cd"}])
    said = prepare("--tokenizer", bpe, "--out", tmp_path / "out", lines).stderr
    assert "recognised: 1 of text, 1 of prompt and completion" in said
    assert "1 of them could be read as instruction and output too: --form alpaca" in said
    assert "in 1 documents prompt and completion run into one another without a blank: --as-chat" in said
    # A base model's end of sequence beside a template that ends turns with another token.
    folder = hub_folder(tmp_path / "hub", bpe, CHATML)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID]}])
    said = prepare("--tokenizer", folder, "--out", tmp_path / "chats", chats).stderr
    assert "1 of 1 documents end with <|im_end|>, and the tokenizer's end-of-sequence token is <|endoftext|>: --eos '<|im_end|>'" in said
    assert "end with" not in prepare("--tokenizer", folder, "--eos", "<|im_end|>", "--out", tmp_path / "named", chats).stderr


def test_a_part_without_a_document_says_what_fills_it(tmp_path, bpe):  # noqa: F811
    out, book = tmp_path / "out", write_lines(tmp_path / "book.jsonl", [{"body": "One.\n\nTwo.\n\nThree.\n\nFour.\n\nFive."}])
    flags = ("--tokenizer", bpe, "--text-key", "body", "--validation-fraction", "0.4", "--out", out)
    assert "--split-blank" in refused(*flags, book, code=3) and not out.exists()
    prepare(*flags, "--split-blank", book)
    assert sum(read(out / part)[0]["documents"] for part in ("train", "validation")) == 5
    more = write_lines(tmp_path / "more.jsonl", [{"body": f"text {i}"} for i in range(20)])
    few = ("--tokenizer", bpe, "--text-key", "body", "--overwrite", "--out", out)
    said = refused(*few, "--validation-fraction", "0.0001", more, code=3)
    share = said.rsplit("--validation-fraction ", 1)[1]
    prepare(*few, "--validation-fraction", share, more)
    assert read(out / "validation")[0]["documents"] >= 1


TEMPLATES = {  # that transformers renders, and what they give for a question and its answer
    "generation": ("{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
                   "{% if add_generation_prompt %}assistant:{% endif %}", "user:2+2?;assistant:It is 4.;", ["It is 4.;"]),
    "tools and dates": ("{% if tools is none %}{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}{% endif %}"
                        "{% if add_generation_prompt %}assistant:{% endif %}{% set d = strftime_now('%d %b %Y') %}",
                        "user:2+2?|assistant:It is 4.|", ["It is 4.|"]),
    "json and loops": ("{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.role }}:{{ m | tojson }};{% endfor %}"
                       "{% if add_generation_prompt %}assistant:{% endif %}", None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_does(tmp_path, bpe, name):  # noqa: F811
    template, text, learned = TEMPLATES[name]
    folder = hub_folder(tmp_path / "hub", bpe, template)
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID]}])
    prepare("--tokenizer", folder, "--out", tmp_path / "out", lines)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    [document] = read(tmp_path / "out")[1]
    from transformers import PreTrainedTokenizerFast
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(bpe), chat_template=template)
    wanted = theirs.apply_chat_template([ASKED, SAID], tokenize=False)
    assert tokenizer.decode(document["ids"].tolist(), skip_special_tokens=False) == wanted == (text or wanted)
    assert learned is None or target_runs(document, tokenizer) == learned


def test_a_long_chat_has_the_time_it_needs(tmp_path, bpe):  # noqa: F811
    folder = hub_folder(tmp_path / "hub", bpe, CHATML)
    lines = write_lines(tmp_path / "chats.jsonl", [{"messages": [ASKED, SAID] * 400}])
    prepare("--tokenizer", folder, "--out", tmp_path / "out", lines)
    assert read(tmp_path / "out")[0]["targets"] > 400
