#!/usr/bin/env python3
"""Turns text, JSONL, Parquet and chats into token shards that `limbeck train` reads.

    tools/prepare_data.py --tokenizer FOLDER --out data/mine texts/ more.jsonl
    tools/prepare_data.py --tokenizer Qwen/Qwen2.5-0.5B --out data/chat chats.jsonl      as on the hub; in the local cache
    tools/prepare_data.py --tokenizer A --teacher-tokenizer B --out data/pair texts/     for two vocabularies
    tools/prepare_data.py --from-pt DIR --tokenizer FOLDER --out data/mine       input_ids.pt, attention_mask.pt, labels.pt
    tools/prepare_data.py --from-python-stdlib --train-vocabulary 8192 --out data/python    nothing is downloaded

A record of JSONL or Parquet is read by its keys, the first of these that it has:
    text               'text': a text, all of which is learned
    chat               'messages' of role and content, or 'conversations' of from and value: the assistant's turns are learned
    prompt-completion  'prompt' and 'completion', texts or lists of messages: what stands behind the prompt is learned
    preference         'chosen', and 'prompt' or 'rejected', or the whole conversation in 'chosen': the same
    alpaca             'instruction', 'input' (may be empty) and 'output': a chat of one question and its answer

Writes OUT/manifest.json and OUT/shard-00000.safetensors ..., or the same under OUT/train and OUT/validation with
--validation-fraction. The same input gives the same bytes. `limbeck verify OUT` checks what was written.
"""
import argparse
import importlib.util
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def in_environment():
    """Typed as a command this runs under the system's Python; the packages are in .venv (or LIMBECK_VENV)."""
    if importlib.util.find_spec("tokenizers") is None:
        python = pathlib.Path(os.environ.get("LIMBECK_VENV") or HERE.parent / ".venv") / "bin" / "python"
        if not python.exists() or os.environ.get("LIMBECK_PREPARE_DATA_PYTHON"):
            sys.exit("prepare_data: the package tokenizers is missing: run tools/setup")
        os.environ["LIMBECK_PREPARE_DATA_PYTHON"] = str(python)
        os.execv(python, [str(python), *sys.argv])


in_environment()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would only take memory
sys.path.insert(0, str(HERE))
import guarded_work  # noqa: E402
from token_shards import DataFault, UsageFault  # noqa: E402
from token_shards import chat, documents, encoding, hub_cache, record_forms, shard_writer, tensor_rows, tokenizer_file  # noqa: E402
from token_shards.counted import Counted, no_document_left  # noqa: E402
from token_shards.progress import Progress  # noqa: E402

GIB, BYTES_A_WAITING_TOKEN = 1 << 30, 80
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 4_000_000


def parsed_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group("what to read")
    source.add_argument("sources", nargs="*", type=pathlib.Path, metavar="FILE|FOLDER",
                        help=".jsonl, .parquet, and any other file as text; folders are read to their depth")
    source.add_argument("--from-python-stdlib", action="store_true",
                        help="the .py files of this machine's Python standard library")
    source.add_argument("--from-pt", type=pathlib.Path, metavar="DIR",
                        help="rows that are tokens already: DIR/input_ids.pt and attention_mask.pt, [rows, tokens], and labels.pt, "
                        "[rows], each one tensor; nothing in them is run")
    split = source.add_mutually_exclusive_group()
    split.add_argument("--split-lines", action="store_const", dest="split", const="lines", default="file",
                       help="each line of a text is a document (default: each file or record)")
    split.add_argument("--split-blank", action="store_const", dest="split", const="blank",
                       help="blank lines separate the documents of a text")
    source.add_argument("--text-key", metavar="KEY", help="key or column of the text (default: text)")
    source.add_argument("--chat-key", metavar="KEY", help="key of a chat (default: messages)")
    source.add_argument("--prompt-key", metavar="KEY", help="key of a prompt (default: prompt)")
    source.add_argument("--completion-key", metavar="KEY", help="key of what answers it (default: completion)")
    source.add_argument("--form", choices=["auto", *record_forms.FORMS], default="auto",
                        help="what records are (default: auto, by their keys, as above)")
    source.add_argument("--as-chat", action="store_true",
                        help="prompts and completions that are texts become turns of a chat (default: joined as they are)")
    source.add_argument("--learn", choices=["answers", "all"], default="answers",
                        help="answers: what the assistant wrote, what stands behind a prompt (default); all: the rest too")
    source.add_argument("--label-key", metavar="KEY", help="key or column of the class, for classifiers")
    source.add_argument("--label-names", type=lambda text: text.split(","), metavar="A,B,...",
                        help="classes that are names, in the order of their numbers")
    source.add_argument("--max-documents", type=positive, metavar="N", help="stop after N documents")
    source.add_argument("--max-tokens", type=positive, metavar="N", help="stop before more than N tokens")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument("--tokenizer", metavar="FILE|FOLDER|ORG/NAME[@REVISION]",
                        help="tokenizer.json, its folder, or its name on the hub, which is looked up in the local cache")
    tokens.add_argument("--train-vocabulary", type=positive, metavar="N",
                        help="train a tokenizer of N tokens on the texts instead")
    tokens.add_argument("--train-kind", choices=["bytes", "wordpiece"], default="bytes",
                        help="of --train-vocabulary: byte-level BPE (default), or WordPiece as BERT's, for masked "
                        "language models")
    tokens.add_argument("--train-characters", type=positive, default=12_000_000, metavar="N",
                        help="train it on the first N characters (default: 12000000)")
    tokens.add_argument("--teacher-tokenizer", metavar="FILE|FOLDER|ORG/NAME[@REVISION]",
                        help="a second tokenizer; its tokens are aligned with the first's by character")
    tokens.add_argument("--eos", metavar="TOKEN|ID", help="the end-of-sequence token (default: the tokenizer's)")
    tokens.add_argument("--teacher-eos", metavar="TOKEN|ID", help="the same of the second tokenizer")
    tokens.add_argument("--append-eos", action=argparse.BooleanOptionalAction, default=True,
                        help="end every document, and every turn of the assistant, with it (default: yes)")
    tokens.add_argument("--special-tokens", action="store_true",
                        help="let the tokenizer add its own, such as [CLS] and [SEP] or a beginning of sequence")
    tokens.add_argument("--chat-template", choices=["auto", "builtin", "tokenizer"], default="auto",
                        help="builtin: 'User: ...' in plain text; auto: the tokenizer's if it has one (default)")
    out = parser.add_argument_group("what to write")
    out.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR",
                     help="shards and manifest.json; the tokenizer's files go to OUT/tokenizer")
    out.add_argument("--validation-fraction", type=fraction, metavar="F",
                     help="this share of the documents, chosen by content, goes to OUT/validation, the rest to OUT/train")
    out.add_argument("--shard-tokens", type=positive, default=16 << 20, metavar="N", help="tokens a shard (default: 16M, 80 MB)")
    out.add_argument("--overwrite", action="store_true", help="replace the shards that are in OUT")
    out.add_argument("--quiet", action="store_true", help="errors only")
    return parser.parse_args(arguments)


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
    given = bool(a.sources) + a.from_python_stdlib + (a.from_pt is not None)
    if given != 1:
        raise UsageFault("name texts to read, --from-python-stdlib or --from-pt DIR" if not given else
                         "texts, --from-python-stdlib and --from-pt: choose one of them")
    if a.from_pt is not None and (a.teacher_tokenizer or a.train_vocabulary or a.label_key):
        raise UsageFault("--from-pt has tokens and classes already: name the --tokenizer that made the tokens, and leave out "
                         "--train-vocabulary, --teacher-tokenizer and --label-key")
    if (a.tokenizer is None) == (a.train_vocabulary is None):
        raise UsageFault("wanted one of --tokenizer FILE and --train-vocabulary N")
    if a.teacher_tokenizer and a.chat_template == "tokenizer":
        raise UsageFault("--chat-template tokenizer with two tokenizers: their templates give two texts, which cannot be "
                         "aligned: use --chat-template builtin")
    if a.teacher_tokenizer and a.label_key:
        raise UsageFault("--label-key and --teacher-tokenizer together: a classifier has one tokenizer")
    if a.label_names and not a.label_key and a.from_pt is None:
        raise UsageFault("--label-names without --label-key")


def for_validation(document, share):
    return share is not None and document.digest() < share * 2**64


def trained_tokenizer(a, files, reading, progress):
    """Trained on what will be trained on: not on the documents held out."""
    begin, left = time.monotonic(), a.train_characters

    def learned_texts():
        nonlocal left
        for document in documents.documents_of(files, reading):
            if for_validation(document, a.validation_fraction):
                continue
            text = document.text or "\n".join(message["content"] for message in document.messages or [])
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return

    def texts():
        yield from learned_texts()
        guarded_work.step("training a tokenizer on its texts", a.out, 120 + a.train_characters * 2e-4,
                          2 * GIB + a.train_characters * 200, "train it on less with --train-characters N")

    train = tokenizer_file.train_word_pieces if a.train_kind == "wordpiece" else tokenizer_file.train
    folder = shard_writer.put_tokenizer(a.out, train(texts(), a.train_vocabulary))
    file = tokenizer_file.TokenizerFile(folder, a.eos)
    progress.say(f"{file.path}: a tokenizer of {file.vocabulary} tokens, {time.monotonic() - begin:.1f} s")
    return file


def named_tokenizer(text, option, end):
    path = pathlib.Path(text)
    if not path.exists():
        path = hub_cache.find(text, option) or path
    return tokenizer_file.TokenizerFile(path, end)


def segmenter(a, student):
    """From a document to the texts that are tokenized. The template's process is started by the first chat."""
    own, everything = None, a.learn == "all"
    template = None if a.teacher_tokenizer or a.chat_template == "builtin" else student.chat_template()
    if a.chat_template == "tokenizer" and template is None:
        raise UsageFault(f"--chat-template tokenizer: {student.path.parent} has no chat template: use builtin")

    def segments_of(document):
        nonlocal own
        if document.messages is None:
            return chat.plain_segments(document, everything)
        if template is None:
            return chat.builtin_segments(document.messages, document.prompt, everything)
        if own is None:
            variables = {key: text for key in ("bos_token", "eos_token") if (text := student.special(key)) is not None}
            own = chat.OwnTemplate(template[1], template[0], variables, student.special_texts())
        return own.segments(document, everything)

    return segments_of


def batches_of(stream, most):
    """Lists of documents, bounded in number and in characters."""
    batch, characters = [], 0
    for number, document in enumerate(stream):
        if number == most:
            break
        batch.append(document)
        characters += document.characters()
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def required_end(file, option):
    if file.end is None:
        raise UsageFault(f"{file.path}: names no end-of-sequence token: name it with {option} TOKEN, or --no-append-eos")


def held_memory(a):
    """Bytes that may be held beside a document or batch: the shard that waits to be written."""
    return GIB + (2 if a.teacher_tokenizer else 1) * a.shard_tokens * BYTES_A_WAITING_TOKEN


def write_all(a, stream, student, teacher, writers, progress):
    """Encodes and writes; returns what was counted."""
    segments_of = segmenter(a, student)
    encode = encoding.Encoder(student, a.append_eos, a.special_tokens, offsets=teacher is not None)
    encode_teacher = teacher and encoding.Encoder(teacher, a.append_eos, a.special_tokens, offsets=True)
    counted = Counted(len(a.label_names or ()))
    for batch in batches_of(stream, a.max_documents):
        encoded = encoding.encode_documents(batch, segments_of, encode, encode_teacher, held_memory(a))
        guarded_work.step("writing shards", a.out, 600, held_memory(a) * 2, "write smaller ones with --shard-tokens")
        for document, tokens in zip(batch, encoded):
            length = len(tokens.student.ids)
            if length == 0:
                counted.empty += 1
                continue
            if a.max_tokens and counted.tokens + length > a.max_tokens:
                return counted
            writers[for_validation(document, a.validation_fraction)].add(tokens)
            counted.add(document, tokens)
        progress.update(counted)
    return counted


def prepare(a):
    progress, begin = Progress(a.quiet), time.monotonic()
    files = documents.standard_library() if a.from_python_stdlib else documents.files_of(a.sources)
    reading = documents.Reading(keys_of(a), a.label_key, a.label_names, a.split, held_memory(a))
    student = named_tokenizer(a.tokenizer, "--tokenizer", a.eos) if a.tokenizer else None
    teacher = named_tokenizer(a.teacher_tokenizer, "--teacher-tokenizer", a.teacher_eos) if a.teacher_tokenizer else None
    names = parts_of(a)
    for name in {"", *names}:
        shard_writer.clear_folder(a.out / name, a.overwrite)
    student = student or trained_tokenizer(a, files, reading, progress)
    if a.append_eos:
        required_end(student, "--eos")
        if teacher:
            required_end(teacher, "--teacher-eos")
    writers = [shard_writer.ShardWriter(a.out / name, a.shard_tokens, bool(a.label_key)) for name in names]
    counted = write_all(a, documents.documents_of(files, reading), student, teacher, writers, progress)
    entries = {"tokenizer": student.manifest_entry()}
    if teacher:
        entries["teacher_tokenizer"] = teacher.manifest_entry()
    if a.label_key:
        if counted.classes == 0:
            raise DataFault(f"none of {counted.documents} documents has a class under {a.label_key!r}")
        entries["classes"] = counted.classes
    for writer in writers:
        if writer.documents == 0:
            raise DataFault(no_document_left(writer.folder, counted, a.validation_fraction, a.split))
    if a.tokenizer:
        shard_writer.put_tokenizer(a.out, student.files())
    for writer in writers:
        writer.finish(entries)
        progress.say(f"{writer.folder}: {writer.documents:,} documents, {writer.tokens:,} tokens, {writer.targets:,} targets")
    for line in counted.lines(a.learn == "all", student if a.append_eos else None):
        progress.say(line)
    progress.say(f"done in {time.monotonic() - begin:.1f} s")


def prepare_tensors(a):
    """The rows of --from-pt, as they are."""
    progress, begin = Progress(a.quiet), time.monotonic()
    tokenizer = named_tokenizer(a.tokenizer, "--tokenizer", a.eos)
    rows = tensor_rows.read(a.from_pt, tokenizer, a.label_names)
    names = parts_of(a)
    for name in {"", *names}:
        shard_writer.clear_folder(a.out / name, a.overwrite)
    writers = [shard_writer.ShardWriter(a.out / name, a.shard_tokens, labelled=True) for name in names]
    for row in rows.documents(a.max_documents, a.max_tokens):
        writers[for_validation(row, a.validation_fraction)].add(row)
    for writer in writers:
        if writer.documents == 0:
            raise DataFault(f"{writer.folder}: none of {len(rows.lengths):,} rows is left for it: change --max-documents, --max-tokens or "
                            "--validation-fraction")  # fmt: skip
    shard_writer.put_tokenizer(a.out, tokenizer.files())
    for writer in writers:
        writer.finish({"tokenizer": tokenizer.manifest_entry(), "classes": rows.classes})
        progress.say(f"{writer.folder}: {writer.documents:,} rows of {rows.classes} classes, {writer.tokens:,} tokens")
    progress.say(f"done in {time.monotonic() - begin:.1f} s")


def keys_of(a):
    """A key that is named is what the user means, whatever else a record holds."""
    form = a.form
    if form == "auto" and a.completion_key:
        form = "prompt-completion"
    elif form == "auto" and bool(a.text_key) != bool(a.chat_key):
        form = "text" if a.text_key else "chat"
    return record_forms.Keys(a.text_key or "text", a.chat_key or "messages", a.prompt_key or "prompt",
                             a.completion_key or "completion", form, a.as_chat)


def parts_of(a):
    return ["train", "validation"] if a.validation_fraction is not None else [""]


def main(arguments=None):
    a = parsed_arguments(arguments)
    made = guarded_work.absent_folders(a.out / name for name in parts_of(a))

    def work():
        check_arguments(a)
        (prepare if a.from_pt is None else prepare_tensors)(a)

    return guarded_work.answered("prepare_data", work, lambda: guarded_work.remove_empty(made))


if __name__ == "__main__":
    sys.exit(main())
