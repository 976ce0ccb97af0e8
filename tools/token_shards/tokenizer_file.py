"""A Hugging Face tokenizer.json with what stands beside it: end and padding tokens, the chat template, a digest."""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable

import google_crc32c
import tokenizers
from guarded_work import is_panic, one_line, step

from token_shards import TOKENIZER_FILES, DataFault, UsageFault

END_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>")
PADDING_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")
MASK_NAMES = ("[MASK]", "<mask>", "<|mask|>")
MOST_BYTES, MOST_BYTES_BESIDE, MOST_BYTES_OF_TEMPLATE, LARGEST_ID = 1 << 29, 1 << 26, 1 << 20, 2**31 - 2
TRAINED_END, TRAINED_PADDING = "<|endoftext|>", "<|pad|>"
WORD_PIECE_KEYS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
WORD_PIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_SPACES = ("\u0120", "\u010a", "\u0109", "\u010d")  # how byte-level tokenizers write blank, newline, tab, return


def _read(path: pathlib.Path, most: int) -> bytes:
    size = path.stat().st_size
    if size > most:
        raise DataFault(f"{path}: {size:,} bytes, wanted at most {most:,}")
    step("reading it", path, 20 + size * 2e-6, (1 << 30) + size * 100, "use another tokenizer")
    return path.read_bytes()


class TokenizerFile:
    """`end` names the end-of-sequence token, as text or as an id; without it the files and well-known names decide."""

    def __init__(self, path: pathlib.Path, end: str | None = None):
        self.path = path / "tokenizer.json" if path.is_dir() else path
        if not self.path.is_file():
            raise UsageFault(f"{self.path}: no such file, wanted a tokenizer.json or the Hugging Face folder of one "
                             "(transformers' AutoTokenizer.from_pretrained(X).save_pretrained(Y) writes it)")
        text = _read(self.path, MOST_BYTES)
        try:
            content = json.loads(text)
            self.tokenizer = tokenizers.Tokenizer.from_buffer(text)
        except BaseException as error:  # the library raises plain Exception, and its panics are none
            if isinstance(error, (KeyboardInterrupt, MemoryError)) or not (isinstance(error, Exception) or is_panic(error)):
                raise
            raise DataFault(f"{self.path}: no tokenizer.json that can be read: {one_line(error, 160)}") from None
        # What a training run left behind; here a text is never cut and never padded.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        for passing in ("truncation", "padding"):
            content.pop(passing, None)
        self.digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        self.config = self._beside("tokenizer_config.json") | self._beside("special_tokens_map.json")
        self.names = self.tokenizer.get_vocab(with_added_tokens=True)
        if not self.names:
            raise DataFault(f"{self.path}: its vocabulary is empty")
        last = max(self.names, key=self.names.get)
        if self.names[last] > LARGEST_ID:
            raise DataFault(f"{self.path}: holds id {self.names[last]} ({one_line(repr(last), 80)}), wanted ids below "
                            f"{LARGEST_ID + 1}: use another tokenizer")
        self.vocabulary = self.names[last] + 1
        self.end = self._named(end) if end is not None else self._find("eos_token", END_NAMES)
        self.padding = self._find("pad_token", PADDING_NAMES)
        self.mask = self._find("mask_token", MASK_NAMES)
        self._content, self._text = content, text

    def _beside(self, name: str) -> dict:
        path = self.path.parent / name
        if not path.is_file():
            return {}
        try:
            content = json.loads(_read(path, MOST_BYTES_BESIDE).decode())
        except (ValueError, RecursionError) as error:
            raise DataFault(f"{path}: no JSON: {one_line(error, 160)}") from None
        if not isinstance(content, dict):
            raise DataFault(f"{path}: {type(content).__name__}, wanted an object")
        return content

    def files(self) -> dict[str, bytes]:
        """The tokenizer as a folder that stands for itself: from file name to content."""
        files = {"tokenizer.json": self._text}
        for name in TOKENIZER_FILES[1:]:
            path = self.path.parent / name
            if path.is_file():
                files[name] = _read(path, MOST_BYTES_BESIDE)
        return files

    def special(self, key: str) -> str | None:
        value = self.config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None and not isinstance(content, str):
            raise DataFault(f"{self.path.parent}: {key!r} of tokenizer_config.json or special_tokens_map.json is "
                            f"{one_line(repr(content), 80)}, wanted a token's text")
        return content

    def _find(self, key: str, known: Iterable[str]) -> int | None:
        for name in (self.special(key), *known):
            if name in self.names:
                return self.names[name]
        return None

    def _named(self, end: str) -> int:
        if end in self.names:
            return self.names[end]
        if re.fullmatch(r"[0-9]{1,10}", end) and int(end) < self.vocabulary:
            return int(end)
        raise UsageFault(f"--eos {end}: neither a token of {self.path} nor an id below {self.vocabulary}")

    def chat_template(self) -> tuple[str, str] | None:
        """Its text, and the file that it is from."""
        beside, config = self.path.parent / "chat_template.jinja", self.path.parent / "tokenizer_config.json"
        if beside.is_file():
            try:
                return _read(beside, MOST_BYTES_OF_TEMPLATE).decode(), str(beside)
            except UnicodeDecodeError as error:
                raise DataFault(f"{beside}: byte {error.start} is not UTF-8: use --chat-template builtin") from None
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several by name
            template = next((entry.get("template") for entry in template
                             if isinstance(entry, dict) and entry.get("name") == "default"), None)
        if template is not None and not (isinstance(template, str) and len(template) <= MOST_BYTES_OF_TEMPLATE):
            kind = f"{len(template):,} characters" if isinstance(template, str) else type(template).__name__
            raise DataFault(f"{config}: chat_template is {kind}, wanted a text of at most {MOST_BYTES_OF_TEMPLATE:,}: use "
                            "--chat-template builtin")
        return None if template is None else (template, str(config))

    def special_texts(self) -> list[str]:
        """Special tokens as they stand in a text."""
        tokens = self.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in tokens if token.special and token.content]

    def special_ids(self) -> list[int]:
        """Ids that stand for no text."""
        marked = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        return sorted(marked | ({self.end, self.padding, self.mask} - {None}))

    def continuing_ids(self) -> list[int] | None:
        """Tokens that go on with the word of the token before them; None: the tokenizer does not say. A word is what
        WordPiece splits, and in byte-level and SentencePiece vocabularies what stands between blanks."""
        prefix = self._content["model"].get("continuing_subword_prefix")
        if prefix:
            return sorted(id for name, id in self.names.items() if name.startswith(prefix))
        steps = _step_types(self._content.get("pre_tokenizer")) | _step_types(self._content.get("decoder"))
        starts = BYTE_SPACES if "ByteLevel" in steps else ("\u2581",) if "Metaspace" in steps else ()
        if not starts:
            return None
        special = set(self.special_ids())
        return sorted(id for name, id in self.names.items() if not name.startswith(starts) and id not in special)

    def ids_fingerprint(self) -> str | None:
        """A checksum of what each id of the model's own vocabulary means (trainer/agreement/vocabulary_guard.h). Unlike
        the digest it stays when the file is written in another form, or tokens are added."""
        vocabulary = self._content["model"].get("vocab")
        if isinstance(vocabulary, dict):
            names = {id: name for name, id in sorted(vocabulary.items())}
        elif isinstance(vocabulary, list):
            names = {id: entry[0] for id, entry in enumerate(vocabulary)}
        else:
            return None
        text = "".join(f"{id}\t{names[id]}\n" for id in sorted(names))
        return f"{google_crc32c.value(text.encode()):08x}"

    def manifest_entry(self) -> dict:
        entry = {"digest": self.digest, "vocabulary": self.vocabulary, "special": _ranges(self.special_ids())}
        fingerprint = self.ids_fingerprint()
        if fingerprint is not None:
            entry["ids_fingerprint"] = fingerprint
        continuing = self.continuing_ids()
        if continuing is not None:
            entry["continuing"] = _ranges(continuing)
        if self.mask is not None:
            entry["mask"] = self.mask
        if self.end is not None:
            entry["end_of_sequence"] = self.end
        if self.padding is not None:
            entry["padding"] = self.padding
        return entry


def _step_types(step: dict | None) -> set[str]:
    """Of a pre-tokenizer or decoder, which may be a sequence of others."""
    if not step:
        return set()
    parts = [*step.get("pretokenizers", ()), *step.get("decoders", ())]
    return {step.get("type")}.union(*map(_step_types, parts))


def _ranges(ids: list[int]) -> str:
    """Ascending ids as text: 4,7-9."""
    ranges: list[list[int]] = []
    for id in ids:
        if ranges and ranges[-1][1] == id - 1:
            ranges[-1][1] = id
        else:
            ranges.append([id, id])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _word_pieces(words: collections.Counter, most: int) -> list[str]:
    """The likeliest letters, and what byte-pair merges make of the words, the likeliest first. Not by the library's
    WordPieceTrainer, whose ties and numbers follow a hash table that is another one in each process."""
    letters = collections.Counter()
    for word, count in words.items():
        letters.update({("##" if at else "") + letter: count for at, letter in enumerate(word)})
    merged = tokenizers.Tokenizer(tokenizers.models.BPE())
    merged.train_from_iterator((word for word in sorted(words) for _ in range(min(words[word], 1000))),
                               tokenizers.trainers.BpeTrainer(vocab_size=most, show_progress=False))
    found = collections.Counter()
    for word, encoding in zip(words, merged.encode_batch(list(words))):
        found.update({("##" if at else "") + piece: words[word] for at, piece in enumerate(encoding.tokens)})
    by_count = [sorted(counts, key=lambda name: (-counts[name], name)) for counts in (letters, found)]
    return list(dict.fromkeys([*by_count[0][: most // 2], *by_count[1]]))[:most]


def _trained_files(tokenizer: tokenizers.Tokenizer, special: dict[str, str]) -> dict[str, bytes]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return {"tokenizer.json": tokenizer.to_str(pretty=False).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def train_word_pieces(texts: Iterable[str], vocabulary: int) -> dict[str, bytes]:
    """The files of a WordPiece tokenizer as BERT's, lower case, whose special tokens are [CLS] text [SEP] and [MASK]."""
    least = len(WORD_PIECE_SPECIALS) + 1
    if vocabulary < least:
        raise UsageFault(f"--train-vocabulary {vocabulary}, wanted at least {least}: the special tokens and a letter")
    normalizer, splitter = tokenizers.normalizers.BertNormalizer(lowercase=True), tokenizers.pre_tokenizers.BertPreTokenizer()
    words = collections.Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = _word_pieces(words, vocabulary - len(WORD_PIECE_SPECIALS))
    numbers = {name: number for number, name in enumerate([*WORD_PIECE_SPECIALS, *pieces])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens(list(WORD_PIECE_SPECIALS))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    return _trained_files(tokenizer, {key: f"[{key[:-6].upper()}]" for key in WORD_PIECE_KEYS})


def train(texts: Iterable[str], vocabulary: int) -> dict[str, bytes]:
    """The files of a byte-level BPE tokenizer of exactly the bytes, merges and two special tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + 2
    if vocabulary < least:
        raise UsageFault(f"--train-vocabulary {vocabulary}, wanted at least {least}: every byte, end and padding")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[TRAINED_END, TRAINED_PADDING],
                                             initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _trained_files(tokenizer, {"eos_token": TRAINED_END, "pad_token": TRAINED_PADDING})
