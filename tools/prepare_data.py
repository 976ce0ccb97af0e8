#!/usr/bin/env python3
"""Turns text, JSONL, Parquet and chats into token shards that `limbeck train` reads.

    tools/prepare_data.py --tokenizer FOLDER --out data/mine texts/ more.jsonl
    tools/prepare_data.py --tokenizer FOLDER --out data/chat chats.jsonl            only the assistant's turns are learned:
                          messages, conversations, prompt + completion, prompt + chosen, instruction (+ input) + output
    tools/prepare_data.py --tokenizer A --teacher-tokenizer B --out data/pair texts/     for two vocabularies
    tools/prepare_data.py --from-python-stdlib --train-vocabulary 8192 --out data/python    nothing is downloaded

Writes OUT/manifest.json and OUT/shard-00000.safetensors ..., or the same under OUT/train and OUT/validation with
--validation-fraction. The same input gives the same bytes. `limbeck verify OUT` checks what was written.
"""
import argparse
import collections
import contextlib
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def in_environment():
    """Typed as a command this runs under the system's Python; the packages are in .venv (or LIMBECK_VENV)."""
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        python = pathlib.Path(os.environ.get("LIMBECK_VENV") or HERE.parent / ".venv") / "bin" / "python"
        if not python.exists() or os.environ.get("LIMBECK_PREPARE_DATA_PYTHON"):
            sys.exit("prepare_data: the package tokenizers is missing: run tools/setup")
        os.environ["LIMBECK_PREPARE_DATA_PYTHON"] = str(python)
        os.execv(python, [str(python), *sys.argv])


in_environment()
sys.path.insert(0, str(HERE))
from token_shards import DataFault, UsageFault  # noqa: E402
from token_shards import chat, documents, encoding, shard_writer, tokenizer_file  # noqa: E402

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 4_000_000


def parsed_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("what to read")
    source.add_argument("sources", nargs="*", type=pathlib.Path, metavar="FILE|FOLDER",
                        help=".jsonl, .parquet, and any other file as text; folders are read to their depth")
    source.add_argument("--from-python-stdlib", action="store_true",
                        help="the .py files of this machine's Python standard library")
    split = source.add_mutually_exclusive_group()
    split.add_argument("--split-lines", action="store_const", dest="split", const="lines", default="file",
                       help="each line of a text file is a document (default: each file)")
    split.add_argument("--split-blank", action="store_const", dest="split", const="blank",
                       help="blank lines separate the documents of a text file")
    source.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    source.add_argument("--chat-key", default="messages", metavar="KEY", help="key of a chat (default: messages)")
    source.add_argument("--label-key", metavar="KEY", help="key or column of the class, for classifiers")
    source.add_argument("--label-names", type=lambda text: text.split(","), metavar="A,B,...",
                        help="classes that are names, in the order of their numbers")
    source.add_argument("--max-documents", type=positive, metavar="N", help="stop after N documents")
    source.add_argument("--max-tokens", type=positive, metavar="N", help="stop before more than N tokens")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument("--tokenizer", type=pathlib.Path, metavar="FILE|FOLDER", help="tokenizer.json or its folder")
    tokens.add_argument("--train-vocabulary", type=positive, metavar="N",
                        help="train a tokenizer of N tokens on the texts instead; OUT/tokenizer.json")
    tokens.add_argument("--train-kind", choices=["bytes", "wordpiece"], default="bytes",
                        help="of --train-vocabulary: byte-level BPE (default), or WordPiece as BERT's, for masked "
                        "language models")
    tokens.add_argument("--train-characters", type=positive, default=12_000_000, metavar="N",
                        help="train it on the first N characters (default: 12000000)")
    tokens.add_argument("--teacher-tokenizer", type=pathlib.Path, metavar="FILE|FOLDER",
                        help="a second tokenizer; its tokens are aligned with the first's by character")
    tokens.add_argument("--eos", metavar="TOKEN|ID", help="the end-of-sequence token (default: the tokenizer's)")
    tokens.add_argument("--teacher-eos", metavar="TOKEN|ID", help="the same of the second tokenizer")
    tokens.add_argument("--append-eos", action=argparse.BooleanOptionalAction, default=True,
                        help="end every document, and every turn of the assistant, with it (default: yes)")
    tokens.add_argument("--special-tokens", action="store_true",
                        help="let the tokenizer add its own, such as [CLS] and [SEP] or a beginning of sequence")
    tokens.add_argument("--learn", choices=["answers", "all"], default="answers",
                        help="of chats, completions and outputs: the answers alone (default), or the questions too")
    tokens.add_argument("--chat-template", choices=["auto", "builtin", "tokenizer"], default="auto",
                        help="builtin: 'User: ...' in plain text; auto: the tokenizer's if it has one (default)")
    out = parser.add_argument_group("what to write")
    out.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    out.add_argument("--validation-fraction", type=fraction, metavar="F",
                     help="this share of the documents, chosen by content, goes to OUT/validation, the rest to OUT/train")
    out.add_argument("--shard-tokens", type=positive, default=16 << 20, metavar="N", help="tokens a shard (default: 16M, 80 MB)")
    out.add_argument("--overwrite", action="store_true", help="replace the shards that are in OUT")
    out.add_argument("--quiet", action="store_true", help="errors only")
    return parser.parse_args()


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, wanted at least 1")
    return value


def fraction(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}, wanted a number between 0 and 1")
    return value


def check_arguments(a):
    if bool(a.sources) == a.from_python_stdlib:
        raise UsageFault("name texts to read, or --from-python-stdlib" if not a.sources else
                         "--from-python-stdlib and texts together: choose one of them")
    if (a.tokenizer is None) == (a.train_vocabulary is None):
        raise UsageFault("wanted one of --tokenizer FILE and --train-vocabulary N")
    if a.teacher_tokenizer and a.chat_template == "tokenizer":
        raise UsageFault("--chat-template tokenizer with two tokenizers: their templates give two texts, which cannot be "
                         "aligned: use --chat-template builtin")
    if a.teacher_tokenizer and a.label_key:
        raise UsageFault("--label-key and --teacher-tokenizer together: a classifier has one tokenizer")
    if a.label_names and not a.label_key:
        raise UsageFault("--label-names without --label-key")


class Progress:
    """One line on a terminal that redraws itself, a plain line now and then elsewhere."""

    def __init__(self, quiet):
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._begin = self._last = time.monotonic()

    def update(self, counts):
        now = time.monotonic()
        if self._quiet or now - self._last < (0.2 if self._terminal else 10):
            return
        self._last = now
        rate = counts["tokens"] / (now - self._begin)
        line = f"{counts['documents']:,} documents, {counts['tokens']:,} tokens, {rate:,.0f} tokens/s"
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def say(self, text):
        if not self._quiet:
            print(("\r\x1b[K" if self._terminal else "") + text, file=sys.stderr, flush=True)


def for_validation(document, share):
    return share is not None and document.digest() < share * 2**64


def trained_tokenizer(a, files, reading, progress):
    """Trained on what will be trained on: not on the documents held out."""
    begin, left = time.monotonic(), a.train_characters

    def texts():
        nonlocal left
        for document in documents.documents_of(files, reading):
            if for_validation(document, a.validation_fraction):
                continue
            text = document.text or "\n".join(message["content"] for message in document.messages or [])
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return

    path = a.out / "tokenizer.json"
    train = tokenizer_file.train_word_pieces if a.train_kind == "wordpiece" else tokenizer_file.train
    shard_writer.write_atomically(path, train(texts(), a.train_vocabulary).encode())
    file = tokenizer_file.TokenizerFile(path, a.eos)
    progress.say(f"{path}: a tokenizer of {file.vocabulary} tokens, {time.monotonic() - begin:.1f} s")
    return file


def segmenter(a, student):
    """From a document to the texts that are tokenized."""
    template = None if a.teacher_tokenizer or a.chat_template == "builtin" else student.chat_template()
    if a.chat_template == "tokenizer" and template is None:
        raise UsageFault(f"--chat-template tokenizer: {student.path.parent} has no chat template: use builtin")
    specials = {"bos_token": student.special("bos_token"), "eos_token": student.special("eos_token")}
    own = template and chat.OwnTemplate(template, specials, str(student.path.parent), student.special_texts())

    def learned(document):
        if document.messages is None:
            spans = [(document.learned_from, len(document.text))] if document.learned_from else None
            return [chat.Segment(document.text, spans, ends=True)] if document.text else []
        if own:
            return own.segments(document.messages, document.where, document.learned_from)
        return chat.builtin_segments(document.messages, document.learned_from)

    def segments_of(document):
        segments = learned(document)
        if a.learn == "all":
            for segment in segments:
                segment.spans, segment.end_is_target = None, True
        return segments

    return segments_of


def batches_of(stream, most):
    """Lists of documents, bounded in number and in characters."""
    batch, characters = [], 0
    for number, document in enumerate(stream):
        if number == most:
            break
        batch.append(document)
        characters += len(document.text) + sum(len(message["content"]) for message in document.messages or [])
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def required_end(file, option):
    if file.end is None:
        raise UsageFault(f"{file.path}: names no end-of-sequence token: name it with {option} TOKEN, or --no-append-eos")


def write_all(a, stream, student, teacher, writers, progress):
    """Encodes and writes; returns what was counted."""
    segments_of = segmenter(a, student)
    encode = encoding.Encoder(student, a.append_eos, a.special_tokens, offsets=teacher is not None)
    encode_teacher = teacher and encoding.Encoder(teacher, a.append_eos, a.special_tokens, offsets=True)
    counts = {"documents": 0, "tokens": 0, "empty": 0, "classes": len(a.label_names or ()), "forms": collections.Counter()}
    for batch in batches_of(stream, a.max_documents):
        encoded = encoding.encode_documents(batch, segments_of, encode, encode_teacher)
        for document, tokens in zip(batch, encoded):
            length = len(tokens.student.ids)
            if length == 0:
                counts["empty"] += 1
                continue
            if a.max_tokens and counts["tokens"] + length > a.max_tokens:
                return counts
            writers[for_validation(document, a.validation_fraction)].add(tokens)
            counts["documents"] += 1
            counts["forms"][document.form] += 1
            counts["tokens"] += length
            counts["classes"] = max(counts["classes"], -1 if tokens.label is None else tokens.label + 1)
        progress.update(counts)
    return counts


def prepare(a):
    check_arguments(a)
    progress, begin = Progress(a.quiet), time.monotonic()
    reading = documents.Reading(a.text_key, a.chat_key, a.label_key, a.label_names, a.split)
    files = documents.standard_library() if a.from_python_stdlib else documents.files_of(a.sources)
    names = ["train", "validation"] if a.validation_fraction is not None else [""]
    for name in {"", *names}:
        shard_writer.clear_folder(a.out / name, a.overwrite)
    plain = not a.from_python_stdlib and a.split == "file" and any(
        path.suffix.lower() not in documents.RECORDS for path in files)
    student = (tokenizer_file.TokenizerFile(a.tokenizer, a.eos) if a.tokenizer
               else trained_tokenizer(a, files, reading, progress))
    teacher = tokenizer_file.TokenizerFile(a.teacher_tokenizer, a.teacher_eos) if a.teacher_tokenizer else None
    if a.append_eos:
        required_end(student, "--eos")
        if teacher:
            required_end(teacher, "--teacher-eos")
    writers = [shard_writer.ShardWriter(a.out / name, a.shard_tokens, bool(a.label_key)) for name in names]
    counts = write_all(a, documents.documents_of(files, reading), student, teacher, writers, progress)
    entries = {"tokenizer": student.manifest_entry()}
    if teacher:
        entries["teacher_tokenizer"] = teacher.manifest_entry()
    if a.label_key:
        if counts["classes"] == 0:
            raise DataFault(f"none of {counts['documents']} documents has a class under {a.label_key!r}")
        entries["classes"] = counts["classes"]
    for writer in writers:
        if writer.documents == 0:
            part = f"{writer.folder}: no document" if len(writers) > 1 else "no document"
            raise DataFault(f"{part} left of {counts['documents']} read and {counts['empty']} empty ones: name more texts, "
                            "or change --max-tokens, --max-documents or --validation-fraction"
                            + (": a text file is one document, --split-blank or --split-lines makes more of it"
                               if plain else ""))
    for writer in writers:
        writer.finish(entries)
        progress.say(f"{writer.folder}: {writer.documents:,} documents, {writer.tokens:,} tokens, {writer.targets:,} targets")
    if set(counts["forms"]) - {"text"}:
        progress.say("recognised: " + ", ".join(f"{count:,} of {form}" for form, count in counts["forms"].items()) +
                     ("; learned: all of them" if a.learn == "all" else "; learned: the answers alone"))
    if counts["empty"]:
        progress.say(f"{counts['empty']:,} empty documents were left out")
    progress.say(f"done in {time.monotonic() - begin:.1f} s")


def main():
    arguments = parsed_arguments()
    absent = [folder for folder in (arguments.out, *arguments.out.parents) if not folder.exists()]
    try:
        prepare(arguments)
    except UsageFault as fault:
        code, message = 2, fault
    except DataFault as fault:
        code, message = 3, fault
    except OSError as fault:
        code, message = 6, fault
    except KeyboardInterrupt:
        code, message = 130, "interrupted; without its manifest the folder is not used, --overwrite begins anew"
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":  # of the tokenizers library, and no Exception
            raise
        code, message = 3, f"{arguments.tokenizer}: the tokenizer cannot encode these texts: {' '.join(str(fault).split())[:160]}"
    else:
        return 0
    # What was made for nothing: empty folders alone.
    for folder in (arguments.out / "train", arguments.out / "validation", *absent):
        with contextlib.suppress(OSError):
            folder.rmdir()
    print(f"prepare_data: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
