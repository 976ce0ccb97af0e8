"""Documents out of files: plain text, JSONL, Parquet, and the Python standard library of this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sysconfig
from collections.abc import Iterator

from guarded_work import step

from token_shards import DataFault, UsageFault
from token_shards.parquet_rows import parquet_rows
from token_shards.record_forms import Content, Keys, content_of, forms_of, shown

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy", ".npz"}
COMPRESSED = {".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".7z"}
SECONDS, SECONDS_A_BYTE = 10, 2e-6  # that reading a record may take
MEMORY_A_BYTE = 24  # of a file or a line: its bytes, its text, and what is made of it


@dataclasses.dataclass
class Document:
    where: str  # file, or file:line; for messages
    text: str = ""
    messages: list[dict] | None = None  # a chat: [{"role": ..., "content": ...}]
    label: int | None = None
    prompt: int = 0  # characters of the text, or messages, that come before what is learned
    form: str = "text"
    also: tuple[str, ...] = ()  # other forms that its record has

    def digest(self) -> int:
        """64 bits that depend on the content alone."""
        content = self.text if self.messages is None else json.dumps(self.messages, sort_keys=True)
        return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big")

    def characters(self) -> int:
        return len(self.text) + sum(len(message["content"]) for message in self.messages or [])


@dataclasses.dataclass
class Reading:
    """How files become documents. `memory`: bytes that reading may hold beside the record of now."""

    keys: Keys = dataclasses.field(default_factory=Keys)
    label_key: str | None = None
    label_names: list[str] | None = None
    split: str = "file"  # of texts: file, lines or blank
    memory: int = 1 << 30


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
        elif source.exists():
            raise UsageFault(f"{source}: no regular file, wanted text, JSONL or Parquet")
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


def _reading(where: str, size: int, reading: Reading) -> None:
    step("reading it", where, SECONDS + size * SECONDS_A_BYTE, reading.memory + size * MEMORY_A_BYTE,
         "leave it out, or cut it into smaller ones")


def _pieces(text: str, split: str) -> Iterator[tuple[int, str]]:
    """Documents of a text, each with the number of its first line."""
    if split == "file":
        yield 1, text
        return
    begin, lines = 1, []
    for number, line in enumerate(text.splitlines(), 1):
        if split == "lines":
            if line.strip():
                yield number, line
        elif line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield begin, "\n".join(lines)
            lines = []
    if lines:
        yield begin, "\n".join(lines)


def _plain(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    _reading(str(path), path.stat().st_size, reading)
    text = _decoded(path.read_bytes(), str(path))
    for number, piece in _pieces(text, reading.split):
        yield Document(str(path) if reading.split == "file" else f"{path}:{number}", piece)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{where}: byte {error.start} is not UTF-8 ({error.reason}): convert it, for example with iconv "
                        "-t UTF-8, or leave it out") from None


def _json_lines(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    _reading(str(path), path.stat().st_size, reading)  # it may be a single line
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            _reading(where, len(line), reading)
            text = _decoded(line, where).strip()
            if not text:
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # also of a number of more digits than Python converts
                raise DataFault(f"{where}: no JSON ({str(error)[:80]}), wanted one object a line") from None
            if not isinstance(record, dict):
                raise DataFault(f"{where}: {type(record).__name__}, wanted an object such as {{\"text\": \"...\"}}")
            yield from _documents(record, where, reading)


def _parquet(path: pathlib.Path, reading: Reading) -> Iterator[Document]:
    _reading(str(path), path.stat().st_size, reading)
    keys = [*reading.keys.named(), *([reading.label_key] if reading.label_key else [])]
    for number, record in enumerate(parquet_rows(path, keys)):
        where = f"{path}: row {number}"
        _reading(where, 0, reading)
        yield from _documents(record, where, reading)


def _documents(record: dict, where: str, reading: Reading) -> Iterator[Document]:
    label = _label(record, where, reading) if reading.label_key else None
    content: Content = content_of(record, reading.keys, where)
    also = tuple(form for form in forms_of(record, reading.keys)[1:] if form not in ("text", "chat", content.form))
    if content.form == "text" and reading.split != "file":
        for _line, piece in _pieces(content.text, reading.split):
            yield Document(where, piece, label=label, also=also)
        return
    yield Document(where, content.text, content.messages, label, content.prompt, content.form, also)


def _label(record: dict, where: str, reading: Reading) -> int | None:
    if reading.label_key not in record:
        raise DataFault(f"{where}: no key {reading.label_key!r}, wanted the class of the text (null: unlabelled)")
    label = record[reading.label_key]
    if label is None or label == -100:
        return None
    if isinstance(label, str):
        if not reading.label_names:
            raise UsageFault(f"{where}: class {shown(label)} is a name: give all names in order, --label-names no,yes")
        if label not in reading.label_names:
            raise DataFault(f"{where}: class {shown(label)}, wanted one of {', '.join(reading.label_names)} (--label-names)")
        return reading.label_names.index(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 1 << 30:
        raise DataFault(f"{where}: class {shown(label)}, wanted a number from 0 on or a name")
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
