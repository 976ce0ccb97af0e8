"""Documents out of files: plain text, JSONL, Parquet, chats, and the Python standard library of this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Iterator

from token_shards import DataFault, UsageFault, record_forms

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy", ".npz"}
RECORDS = {".jsonl", ".ndjson", ".parquet", ".pq"}
COMPRESSED = {".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".7z"}
SHARE_GPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant",
                   "tool": "tool"}


@dataclasses.dataclass
class Document:
    where: str  # file, or file:line; for messages
    text: str = ""
    messages: list[dict] | None = None  # a chat: [{"role": ..., "content": ...}]
    label: int | None = None
    learned_from: int = 0  # the first character of the text, or message of the chat, that is a target
    form: str = "text"  # what it was recognised as

    def digest(self) -> int:
        """64 bits that depend on the content alone."""
        content = self.text if self.messages is None else json.dumps(self.messages, sort_keys=True)
        return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big")


@dataclasses.dataclass
class Reading:
    """How records become documents."""

    text_key: str = "text"
    chat_key: str = "messages"
    label_key: str | None = None
    label_names: list[str] | None = None
    split: str = "file"  # of plain text: file, lines or blank


def files_of(sources: list[pathlib.Path]) -> list[pathlib.Path]:
    """Every file named, and every file below a folder named, folders in sorted order."""
    files = []
    for source in sources:
        if source.is_dir():
            below = sorted(p for p in source.rglob("*") if p.is_file() and not any(
                part.startswith(".") or part == "__pycache__" for part in p.relative_to(source).parts))
            if not below:
                raise DataFault(f"{source}: an empty folder, wanted text, JSONL or Parquet files")
            files += below
        elif source.is_file():
            files.append(source)
        else:
            raise UsageFault(f"{source}: no such file or folder")
    return files


def documents_of(files: list[pathlib.Path], reading: Reading) -> Iterator[Document]:
    for path in files:
        suffix = path.suffix.lower()
        if suffix in PICKLES:
            raise DataFault(f"{path}: {suffix} may be a pickle, which can run code when it is read: wanted text, JSONL or "
                            "Parquet (pickled weights: tools/convert_pickle.py)")
        if suffix in COMPRESSED:
            raise DataFault(f"{path}: {suffix} is an archive, wanted text, JSONL or Parquet: unpack it first")
        if suffix in {".jsonl", ".ndjson"}:
            yield from _json_lines(path, reading)
        elif suffix in {".parquet", ".pq"}:
            yield from _parquet(path, reading)
        elif reading.label_key:
            raise UsageFault(f"{path}: --label-key is for JSONL and Parquet, and this is neither")
        else:
            yield from _plain(path, reading)


def _plain(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    text = _decoded(path.read_bytes(), str(path))
    if reading.split == "file":
        yield Document(str(path), text)
        return
    begin, lines = 1, []
    for number, line in enumerate(text.splitlines(), 1):
        if reading.split == "lines":
            if line.strip():
                yield Document(f"{path}:{number}", line)
        elif line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield Document(f"{path}:{begin}", "\n".join(lines))
            lines = []
    if lines:
        yield Document(f"{path}:{begin}", "\n".join(lines))


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{where}: byte {error.start} is not UTF-8 ({error.reason}): convert it, for example with iconv "
                        "-t UTF-8, or leave it out") from None


def _json_lines(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            text = _decoded(line, where).strip()
            if not text:
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
                raise DataFault(f"{where}: no JSON ({str(error)[:80]}), wanted one object a line") from None
            if not isinstance(record, dict):
                raise DataFault(f"{where}: {type(record).__name__}, wanted an object such as {{\"text\": \"...\"}}")
            yield _document(record, where, reading)


def _parquet(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [key for key in dict.fromkeys((reading.text_key, reading.chat_key, reading.label_key, *record_forms.KEYS))
                  if key in names]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=wanted or None):
            for record in batch.to_pylist():
                yield _document(record, f"{path}: row {number}", reading)
                number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the file's
            raise
        raise DataFault(f"{path}: no Parquet file that can be read: {' '.join(str(error).split())[:160]}") from None


def _document(record: dict, where: str, reading: Reading) -> Document:
    label = _label(record, where, reading) if reading.label_key else None
    text = record.get(reading.text_key)
    if isinstance(text, str):
        return Document(where, _unicode(text, where), label=label)
    if isinstance(record.get(reading.chat_key), list):
        return Document(where, messages=_messages(record[reading.chat_key], where), label=label, form="chat")
    if reading.text_key not in record:
        form = record_forms.recognised(record, where, _messages)
        if form is not None:
            return Document(where, _unicode(form.text, where), form.messages, label, form.learned_from, form.name)
        # A key that holds an answer alone is never named here: it would be learned without its question.
        texts = [key for key, value in record.items() if isinstance(value, str)]
        advice = "name yours with --text-key or --chat-key" if len(texts) <= 1 else "rename yours to one of these forms"
        raise DataFault(f"{where}: keys {', '.join(map(repr, list(record)[:12])) or 'none'}, wanted {reading.text_key!r} "
                        f"(a text) or {reading.chat_key!r} (a chat), {record_forms.WANTED}: {advice}")
    kind = "null" if text is None else type(text).__name__
    raise DataFault(f"{where}: {reading.text_key!r} is {kind}, wanted a text")


def _unicode(text: str, where: str) -> str:
    r"""JSON can spell halves of a character (\ud83d alone), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataFault(f"{where}: character {error.start} is half a surrogate pair, wanted Unicode text") from None
    return text


def _messages(raw: list, where: str) -> list[dict]:
    messages = []
    for number, turn in enumerate(raw):
        place = f"{where}: message {number}"
        if not isinstance(turn, dict):
            raise DataFault(f"{place}: {type(turn).__name__}, wanted {{\"role\": ..., \"content\": ...}}")
        role, content = turn.get("role"), turn.get("content")
        if role is None and "from" in turn:
            said = turn["from"]
            role, content = SHARE_GPT_ROLES.get(said) if isinstance(said, str) else None, turn.get("value")
        if not isinstance(role, str) or role not in SHARE_GPT_ROLES.values():
            raise DataFault(f"{place}: role {turn.get('role', turn.get('from'))!r}, wanted system, user, assistant or tool")
        if not isinstance(content, str):
            raise DataFault(f"{place}: content is {type(content).__name__}, wanted a text")
        messages.append({"role": role, "content": _unicode(content, place)})
    return messages


def _label(record: dict, where: str, reading: Reading) -> int | None:
    if reading.label_key not in record:
        raise DataFault(f"{where}: no key {reading.label_key!r}, wanted the class of the text (null: unlabelled)")
    label = record[reading.label_key]
    if label is None or label == -100:
        return None
    if isinstance(label, str):
        if not reading.label_names:
            raise UsageFault(f"{where}: class {label!r} is a name: give all names in order, --label-names no,yes")
        if label not in reading.label_names:
            raise DataFault(f"{where}: class {label!r}, wanted one of {', '.join(reading.label_names)} (--label-names)")
        return reading.label_names.index(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 1 << 30:
        raise DataFault(f"{where}: class {label!r}, wanted a number from 0 on or a name")
    if reading.label_names and label >= len(reading.label_names):
        raise DataFault(f"{where}: class {label}, wanted 0 to {len(reading.label_names) - 1} (--label-names)")
    return label


def standard_library() -> list[pathlib.Path]:
    """The .py files that came with this Python, in an order that mixes the packages and is the same everywhere."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in {"__pycache__", "site-packages", "dist-packages"}]
        found += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
    files = [path for path in found if path.is_file() and _is_utf8(path)]
    if not files:
        raise DataFault(f"{root}: no .py files: this Python has no sources of its standard library, name texts instead")
    return sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _is_utf8(path: pathlib.Path) -> bool:
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True
