"""What `limbeck check` tells and refuses of the data by its manifest alone, and that training begins with the same: the
shards are gone in most of these tests, and the models have no weights."""

import json
import subprocess

import google_crc32c
import numpy
import pytest
import tokenizers
import transformers
from limbeck_runner import Limbeck, LimbeckError

import token_rows
from token_rows import END
from token_shards import tokenizer_file
from token_shards.encoding import EncodedDocument, Stream
from token_shards.shard_writer import ShardWriter
from token_shards.tokenizer_file import TokenizerFile

VOCABULARY, OTHER = 120, 40
LENGTHS = [3, 5, 5, 8, 13, 21, 34]
ROW, BATCH = 8, 2
PACKED = sum(LENGTHS) // ROW  # and a single token more, which predicts nothing
assert sum(LENGTHS) % ROW == 1


def model(folder, vocabulary, tokenizer=None):
    """config.json alone, and a tokenizer."""
    config = transformers.LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                      num_attention_heads=4, num_key_value_heads=2, torch_dtype="float32")  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def words(names):
    return tokenizers.Tokenizer(tokenizers.models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=names[0]))


ONE = [f"w{id}" for id in range(VOCABULARY)]
TURNED = ["w0", *ONE[:0:-1]]


def stream(length, vocabulary, seed):
    ids = numpy.random.default_rng(seed).integers(3, vocabulary, length).astype(numpy.int32)
    return Stream(ids=ids, mask=numpy.ones(length, numpy.uint8))


def write(folder, entry, teacher=None):
    """Documents of LENGTHS; with a teacher's entry its stream beside, half as long again."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, shard_tokens=1 << 20, labelled=False)
    for number, length in enumerate(LENGTHS):
        theirs = stream(length * 3 // 2, OTHER, number + 100) if teacher else None
        position = numpy.arange(length, dtype=numpy.int32) * 3 // 2 if teacher else None
        writer.add(EncodedDocument(student=stream(length, VOCABULARY, number), teacher=theirs, position=position, label=None))
    writer.finish({"tokenizer": entry, **({"teacher_tokenizer": teacher} if teacher else {})})
    return folder


def rewritten(folder, change):
    """The manifest after `change`, with the checksum that it then must have."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["crc32c"]
    change(manifest)
    text = json.dumps(manifest, indent=2)[: -len("\n}")] + ",\n"
    path.write_text(text + f'  "crc32c": "{google_crc32c.value(text.encode()):08x}"\n}}\n')


def older(manifest):
    """As the writer of before left it."""
    for key in ("lengths", "teacher_lengths"):
        manifest.pop(key, None)
    for entry in ("tokenizer", "teacher_tokenizer"):
        manifest.get(entry, {}).pop("ids_fingerprint", None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and data sets; every data set without its shards but `whole`."""
    place = tmp_path_factory.mktemp("check-data")
    words(ONE).save(str(place / "one.json"))
    words(ONE[:OTHER]).save(str(place / "other.json"))
    one, other = (TokenizerFile(place / name).manifest_entry() for name in ("one.json", "other.json"))
    one |= {"end_of_sequence": END, "padding": 0}
    other |= {"end_of_sequence": END, "padding": 0}
    model(place / "student", VOCABULARY, words(ONE))
    model(place / "teacher", VOCABULARY, words(ONE))
    model(place / "small", OTHER)
    model(place / "far-teacher", OTHER, words(ONE[:OTHER]))
    model(place / "turned", VOCABULARY, words(TURNED))
    more = words(ONE)
    more.add_special_tokens(["<|chat|>"])
    model(place / "with-a-marker", VOCABULARY + 1, more)
    write(place / "whole", one)
    for name, entries in {"single": (one,), "pair": (one, other), "old": (one,)}.items():
        for shard in write(place / name, *entries).glob("*.safetensors"):
            shard.unlink()
    rewritten(place / "old", older)
    return place


def recipe_of(place, student="student", teacher="teacher", data="single", **keys):
    values = {"teacher.model": place / teacher, "teacher.init": "random", "student.model": place / student, "student.init": "random",
              "data.train": place / data, "data.packing": "padded", "data.batch_size": BATCH, "data.sequence_length": ROW}
    values |= {key.replace("__", "."): value for key, value in keys.items()}
    path = place / "recipe.ini"
    sections = {}
    for name, value in values.items():
        sections.setdefault(name.split(".")[0], []).append(f"{name.split('.')[1]} = {value}")
    text = "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    path.write_text(text)
    return path


def checked(place, *flags, **keys):
    out = place / "check.json"
    said = Limbeck().run("check", str(recipe_of(place, **keys)), *flags, "--json", str(out)).stdout
    return json.loads(out.read_text())["result"]["data"], said


def refused(place, command, code, **keys):
    with pytest.raises(LimbeckError, match=f"exit {code}") as failure:
        Limbeck().run(command, str(recipe_of(place, **keys)), *([f"--run={place / 'run'}"] if command == "train" else []))
    message = str(failure.value).splitlines()[-1]
    print(message)
    return message


def beyond(row):
    return [length for length in LENGTHS if length > row]


def test_what_a_row_cuts_off_is_counted_without_a_shard(place):
    [row], said = checked(place)
    lost = sum(length - ROW for length in beyond(ROW))
    assert (row["truncated_documents"], row["tokens_not_used"]) == (len(beyond(ROW)), lost)
    assert (row["documents"], row["tokens"], row["rows"]) == (len(LENGTHS), sum(LENGTHS), len(LENGTHS))
    assert row["batches"] == len(LENGTHS) // BATCH and row["vocabulary"] == VOCABULARY
    flat = " ".join(said.split())
    assert f"{len(beyond(ROW))} documents are longer than a row of {ROW} tokens and are truncated" in flat
    assert "data.long_documents = split keeps them" in " ".join(flat.replace("data.train ", "").split())
    [row], said = checked(place, data__long_documents="split")
    assert (row["truncated_documents"], row["tokens_not_used"]) == (0, 0)
    assert row["rows"] == sum(-(-length // ROW) for length in LENGTHS)
    [row], _ = checked(place, data__packing="packed")
    assert row["rows"] == PACKED and row["tokens_not_used"] == 0 and "the last token was left over" in row["notes"][0]


@pytest.mark.parametrize("packing, splits", [("padded", "truncate"), ("padded", "split"), ("packed", "truncate")])
def test_training_counts_the_same_from_the_shards(place, packing, splits):
    """The plan of the manifest against what a run says and does with the shards: the same lines."""
    keys = dict(data="whole", data__packing=packing, data__long_documents=splits, train__steps="1 epochs", optim__warmup="0 steps")
    [row], _ = checked(place, **keys)
    out = place / "train.json"
    program = Limbeck()._program
    done = subprocess.run([program, "train", recipe_of(place, **keys), f"--run={place / f'run-{packing}-{splits}'}", "--json", out],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["result"]["steps"] == row["batches"]
    for note in row["notes"]:
        assert note in done.stderr or "left out of each epoch" in note, done.stderr


def test_a_pair_of_streams_counts_both(place):
    [row], said = checked(place, teacher="far-teacher", data="pair", objective__divergence="uld", data__teacher_sequence_length=9)
    theirs = [length * 3 // 2 for length in LENGTHS]
    assert row["truncated_documents"] == len([length for length in theirs if length > 9])
    assert (row["teacher_vocabulary"], row["vocabulary"]) == (OTHER, VOCABULARY) and row["teacher_greatest_id"] < OTHER
    assert "--split-blank" in said


@pytest.mark.parametrize("command", ["check", "train"])
class TestWhatIsRefused:
    def test_the_greatest_id_against_the_vocabulary(self, place, command):
        largest = json.loads((place / "single" / "manifest.json").read_text())["shards"][0]["maximum_id"]
        message = refused(place, command, 3, student="small", teacher="small")
        assert f"token ids up to {VOCABULARY - 1} (the greatest in use is {largest})" in message
        assert f"small has {OTHER} rows" in message and "data.train" in message and "recipe.ini:" in message

    def test_one_stream_for_two_tokenizers(self, place, command):
        message = refused(place, command, 2, teacher="far-teacher", objective__divergence="dskd")
        assert "holds the ids of one tokenizer" in message and "--teacher-tokenizer" in message

    def test_two_streams_for_an_objective_of_one(self, place, command):
        message = refused(place, command, 2, data="pair")
        assert "prepared with two tokenizers" in message and "objective.divergence" in message

    def test_packing_two_streams(self, place, command):
        message = refused(place, command, 2, teacher="far-teacher", data="pair", objective__divergence="uld", data__packing="packed")
        assert "two tokenizers" in message and "set data.packing = padded" in message

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_another_tokenizer_than_the_models(self, place, command, role):
        """As many ids, with other meanings."""
        pair = {"student": "turned", "teacher": "turned"}
        message = refused(place, command, 2, **pair, **{f"{role}__init": "weights"})
        assert f"was packed with another tokenizer than {place / 'turned'}/tokenizer.json" in message
        assert f"--tokenizer {place / 'turned'}" in message and "fingerprint" in message

    def test_fewer_rows_than_a_batch(self, place, command):
        message = refused(place, command, 3, data__batch_size=len(LENGTHS) + 1)
        assert f"{len(LENGTHS)} samples of {ROW} tokens, wanted at least data.batch_size = {len(LENGTHS) + 1}" in message

    def test_a_damaged_manifest(self, place, command, tmp_path):
        folder = tmp_path / "damaged"
        folder.mkdir()
        (folder / "manifest.json").write_text((place / "single" / "manifest.json").read_text().replace('"documents"', '"documentz"', 1))
        assert "changed after it was written" in refused(place, command, 3, data=folder)


def test_lengths_that_do_not_add_up_are_refused(place, tmp_path):
    for lengths in ("3x2", "5,3", "3x", "x", "3,,5", "3-5", f"{sum(LENGTHS)}x1,", "9999999999999999999", f"0x{len(LENGTHS)}"):
        folder = tmp_path / f"lengths-{google_crc32c.value(lengths.encode())}"
        folder.mkdir()
        (folder / "manifest.json").write_text((place / "single" / "manifest.json").read_text())
        rewritten(folder, lambda manifest: manifest.update(lengths=lengths))
        message = refused(place, "check", 3, data=folder)
        assert 'key "lengths"' in message and f"wanted ascending lengths such as 3x2,7 of {len(LENGTHS)} documents" in message


def test_a_chat_marker_more_is_no_other_tokenizer(place):
    [row], _ = checked(place, student="with-a-marker", teacher="with-a-marker", student__init="weights", teacher__init="weights")
    assert row["there"]


TEXTS = ["one two three, tw\u00f6 \u2014 \U0001f600 \u4e2d\u6587\t\"quoted\" and \\\\ back", "three two one"] * 9
KINDS = {
    "bytes": lambda: tokenizer_file.train(TEXTS, 280)["tokenizer.json"].decode(),
    "wordpiece": lambda: tokenizer_file.train_word_pieces(TEXTS, 60)["tokenizer.json"].decode(),
    "unigram": lambda: tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("\u2581a", -1.5), ("\u4e2d", -2.25), ("a\tb", -1e-7)], 0)).to_str(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_writer_and_reader_agree_on_what_ids_mean(place, tmp_path, kind):
    """The two languages' fingerprints of each kind of vocabulary; one token renamed is another one."""
    text = KINDS[kind]()
    count = tokenizers.Tokenizer.from_str(text).get_vocab_size()
    folder = model(tmp_path / "model", count, tokenizers.Tokenizer.from_str(text))
    (tmp_path / "tokenizer.json").write_text(text)
    file = TokenizerFile(tmp_path / "tokenizer.json")
    writer = ShardWriter(tmp_path, shard_tokens=100, labelled=False)
    for number in range(BATCH):
        writer.add(EncodedDocument(student=stream(4, 4, number), teacher=None, position=None, label=None))
    writer.finish({"tokenizer": file.manifest_entry()})
    keys = dict(student=folder, teacher=folder, data=tmp_path, student__init="weights", teacher__init="weights")
    [row], _ = checked(place, **keys)
    assert row["vocabulary"] == count
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary[2][0] = "renamed"
    else:
        name = next(name for name, id in vocabulary.items() if id == 20)
        vocabulary["renamed"] = vocabulary.pop(name)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "another tokenizer" in refused(place, "check", 2, **keys)


def test_data_of_before_is_read_and_what_it_lacks_is_said(place):
    [row], said = checked(place, data="old", student__init="weights", teacher__init="weights")
    assert row["rows"] is None and row["truncated_documents"] is None and row["greatest_id"] < VOCABULARY
    assert "which an older tools/prepare_data.py wrote" in " ".join(said.split())
    [row], _ = checked(place, data="old", data__packing="packed")
    assert row["rows"] == PACKED


def test_data_that_is_yet_to_come_is_no_reason_to_fail_a_check(place):
    [row], said = checked(place, data="nowhere")
    assert not row["there"] and "not checked: there is no" in said
    message = refused(place, "train", 3, data="nowhere")
    assert "data.train" in message and str(place / "nowhere") in message
