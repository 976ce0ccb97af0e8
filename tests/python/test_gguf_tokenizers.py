"""Tokenizers in GGUF files: transformers reads the same tokenizer out of them, and so do we; what llama.cpp does otherwise is
said."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import tokenizer_zoo
import transformers
from limbeck_runner import REPOSITORY, LimbeckError, run_program
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROWS = 700  # of the models' embeddings: more than there are tokens
SPECIALS = ["<unk>", "<s>", "</s>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def lines() -> list[str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages).split("\n")


def texts() -> list[str]:
    return [line for line in lines()[:200] if line] + tokenizer_zoo.PHRASES[:16] + ["  two  spaces", "a", " a", "12345 1st\n\n\tx", "é日本🙂"]


def byte_level(words: str | None, size: int = 600, *, ignore_merges: bool = False, before=()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    steps = [*before, *split, own]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else own
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def pieces(size: int = 640, *, as_sentencepiece: bool = True) -> Tokenizer:
    """Llama 2's kind. SentencePiece has a score for each token, of which the merges are all cuts, best token first."""
    specials = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, limit_alphabet=90, show_progress=False)
    tokenizer.train_from_iterator(("▁" + line.replace(" ", "▁") for line in lines() if len(line) < 100), trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = file["added_tokens"][: len(SPECIALS)]
    if as_sentencepiece:
        vocabulary = file["model"]["vocab"]
        wholes = dict.fromkeys("".join(merge) for merge in file["model"]["merges"])
        cuts = ((whole[:at], whole[at:]) for whole in wholes for at in range(1, len(whole)))
        file["model"]["merges"] = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


CONFIGS = {
    "llama": transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=ROWS,
                                      bos_token_id=None, eos_token_id=None),
    "qwen2": transformers.Qwen2Config(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                                      num_key_value_heads=1, vocab_size=ROWS),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=1, n_head=1, n_positions=32, vocab_size=ROWS,
                                    bos_token_id=None, eos_token_id=None),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def export(folder: Path, tokenizer: Tokenizer, place: Path, *flags: str, **settings):
    """The fields of the file, and everything that was said."""
    place.mkdir(exist_ok=True)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    file = place / "model.gguf"
    done = run_program("export-gguf", "--model", folder, "--tokenizer", place, "--output", file, *flags)
    if done.returncode != 0:
        raise LimbeckError(f"exit {done.returncode}: {done.stderr}")
    fields = gguf.GGUFReader(file).fields
    return {key.removeprefix("tokenizer."): field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}, done.stderr


def read_back(place: Path):
    return transformers.AutoTokenizer.from_pretrained(place, gguf_file="model.gguf")


def rebuilt(place: Path):
    """The tokenizer of the folder that limbeck makes of the file, beside which our own reader cuts texts alike."""
    done = run_program("import-gguf", "--model", place / "model.gguf", "--output", place / "rebuilt", "--quiet")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    theirs = transformers.AutoTokenizer.from_pretrained(place / "rebuilt")
    (place / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts()))
    ours = run_program("tokenize", "--model", place / "rebuilt", "--input", place / "texts.jsonl", "--json", place / "ids.json")
    assert ours.returncode == 0, ours.stderr
    said = json.loads((place / "ids.json").read_text())["result"]
    assert said["ids"] == [theirs.encode(text) for text in texts()]
    return theirs


def assert_same_ids(tokenizer: Tokenizer, theirs) -> None:
    for text in texts():
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False).ids, repr(text)


@pytest.mark.parametrize(("name", "words", "called"), [("qwen2", tokenizer_zoo.QWEN_WORDS, "qwen2"), ("gpt2", None, "gpt-2")])
def test_a_byte_level_tokenizer_is_the_same_in_transformers(folders, tmp_path, name, words, called):
    tokenizer = byte_level(words)
    said, told = export(folders[name], tokenizer, tmp_path / name, eos_token="<|im_end|>", pad_token={"content": "<|endoftext|>"},
                        chat_template=TEMPLATE)  # fmt: skip
    assert said["ggml.model"] == "gpt2" and said["ggml.pre"] == called and "warning" not in told
    assert said["ggml.tokens"][:600] == [tokenizer.id_to_token(id) for id in range(600)] and len(set(said["ggml.tokens"])) == ROWS
    assert said["ggml.token_type"] == [CONTROL] * 3 + [NORMAL] * 597 + [UNUSED] * (ROWS - 600)
    assert said["ggml.eos_token_id"] == 2 and said["ggml.padding_token_id"] == 0 and said["ggml.add_bos_token"] is False
    assert said["chat_template"] == TEMPLATE
    assert_same_ids(tokenizer, read_back(tmp_path / name))
    ours = rebuilt(tmp_path / name)
    assert_same_ids(tokenizer, ours)
    assert (ours.eos_token, ours.pad_token, ours.chat_template) == ("<|im_end|>", "<|endoftext|>", TEMPLATE)


def test_pieces_that_fall_back_to_bytes_are_the_same_in_transformers(folders, tmp_path):
    tokenizer = pieces()
    said, told = export(folders["llama"], tokenizer, tmp_path / "pieces", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert said["ggml.model"] == "llama" and said["ggml.add_space_prefix"] is True and "warning" not in told
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    assert said["ggml.token_type"] == kinds + [NORMAL] * (640 - len(kinds)) + [UNUSED] * (ROWS - 640)
    assert (said["ggml.bos_token_id"], said["ggml.eos_token_id"], said["ggml.unknown_token_id"]) == (1, 2, 0)
    assert said["ggml.add_bos_token"] is True and said["ggml.add_eos_token"] is False
    scores = dict(zip(said["ggml.tokens"], said["ggml.scores"], strict=True))
    first = ["".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    assert [scores[token] for token in dict.fromkeys(first)] == [-float(rank) for rank in range(len(set(first)))]
    assert_same_ids(tokenizer, read_back(tmp_path / "pieces"))
    ours = rebuilt(tmp_path / "pieces")
    assert_same_ids(tokenizer, ours)
    for text in texts():
        assert ours.encode(text) == tokenizer.encode(text).ids and ours.decode(ours.encode(text)) == tokenizer.decode(
            tokenizer.encode(text).ids, skip_special_tokens=False), repr(text)  # fmt: skip


@pytest.mark.parametrize(("make", "called"), [
    (lambda: byte_level(tokenizer_zoo.LLAMA3_WORDS, 300, ignore_merges=True), "llama-bpe"),
    (lambda: byte_level(tokenizer_zoo.LLAMA3_WORDS, 300), "smaug-bpe"),
    (lambda: byte_level(None, 300, before=[pre_tokenizers.Digits(individual_digits=True)]), "smollm"),
])  # fmt: skip
def test_the_rule_that_cuts_words_is_found_by_what_it_says(folders, tmp_path, make, called):
    tokenizer = make()
    said, told = export(folders["llama"], tokenizer, tmp_path / "words", eos_token="<|im_end|>")
    assert said["ggml.pre"] == called and "warning" not in told
    assert_same_ids(tokenizer, rebuilt(tmp_path / "words"))


def test_what_llama_cpp_does_otherwise_is_said(folders, tmp_path):
    strange = byte_level(r"\w+|\s+|.", 300)
    strange.normalizer = normalizers.NFC()
    said, told = export(folders["llama"], strange, tmp_path / "strange")
    assert said["ggml.pre"] == "default"
    assert r"cuts a text (\w+|\s+|., then bytes)" in told and "--pre-tokenizer=NAME" in told
    assert "normalized before they are cut (NFC)" in told and "no token ends a text here; llama.cpp then takes the id 11" in told
    said, told = export(folders["llama"], strange, tmp_path / "named", "--pre-tokenizer", "gpt-2", eos_token="<|im_end|>")
    assert said["ggml.pre"] == "gpt-2" and "cuts a text" not in told
    _, told = export(folders["llama"], pieces(as_sentencepiece=False), tmp_path / "merges", eos_token="</s>")
    assert "joins tokens by one score for each, and" in told
    # llama.cpp does not load a model that is called Phi-3 and has other tokens.
    (tmp_path / "my-Phi3").symlink_to(folders["llama"])
    export(tmp_path / "my-Phi3", strange, tmp_path / "unnamed")
    assert "general.name" not in gguf.GGUFReader(tmp_path / "unnamed" / "model.gguf").fields
    assert gguf.GGUFReader(tmp_path / "named" / "model.gguf").get_field("general.name").contents() == "llama"


def test_a_tokenizer_that_cannot_be_written_is_refused(folders, tmp_path):
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*its model is WordPiece, and BPE alone.*--without-tokenizer"):
        export(folders["llama"], wordpiece, tmp_path / "wordpiece")
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*greatest id is 799, and the model has 700 rows.*--tokenizer=DIR"):
        export(folders["llama"], byte_level(None, 800), tmp_path / "large")
    with pytest.raises(LimbeckError, match=r"(?s)exit 2: .*--tokenizer and --without-tokenizer: leave one"):
        export(folders["llama"], wordpiece, tmp_path / "both", "--without-tokenizer")
    assert not list(tmp_path.glob("*/model.gguf"))
