"""A student that is saved can be asked in words: whose tokenizer stands in best/ and final/."""

import json

import chat_template_zoo
import model_zoo
import pytest
import tokenizer_zoo
import transformers
import warm_python
from limbeck_runner import REPOSITORY

TEXT = "def main(argv):"


def prepare(*arguments):
    warm_python.completed([REPOSITORY / "tools" / "prepare_data.py", "--quiet", *arguments], code=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    lines = tokenizer_zoo.real_lines(600)
    (path / "text.txt").write_text("\n\n".join("\n".join(lines[at : at + 10]) for at in range(0, len(lines), 10)), encoding="utf-8")
    trained = ("--train-vocabulary", 400, "--split-blank", path / "text.txt")
    prepare("--out", path / "parts", "--validation-fraction", 0.2, *trained)
    prepare("--out", path / "whole", *trained)
    given = path / "given"
    tokenizer = tokenizer_zoo.llama3(lines)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    model_zoo.write_model(model_zoo.BY_NAME["llama3"], given, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(given / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "custom": 1}
    (given / "tokenizer_config.json").write_text(json.dumps(settings))
    (given / "chat_template.jinja").write_text(chat_template_zoo.CHATML)
    prepare("--out", path / "named", "--split-blank", "--tokenizer", given, path / "text.txt")
    # As the recipes' models are: a config.json and no more.
    (path / "bare").mkdir()
    (path / "bare" / "config.json").write_text((given / "config.json").read_text())
    return path


def trained(limbeck, tmp_path, model, data, *flags):
    """The folder of the student after an update."""
    recipe = tmp_path / "one.ini"
    recipe.write_text(f"[objective]\nalpha = 0\n[student]\nmodel = {model}\ndtype = float32\n[data]\ntrain = {data}\n"
                      "batch_size = 2\nsequence_length = 32\n[train]\nsteps = 1 step\n")  # fmt: skip
    limbeck.run("train", str(recipe), f"--run={tmp_path / 'run'}", *flags)
    return tmp_path / "run" / "final"


def files_of(folder):
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.mark.parametrize("data", ["parts/train", "whole", "named"])
def test_a_student_of_a_config_alone_answers_in_words(limbeck, place, tmp_path, data):
    best = trained(limbeck, tmp_path, place / "bare", place / data, "--student.init=random")
    packed_by = place / data.split("/")[0] / "tokenizer"
    assert files_of(best) == files_of(packed_by)
    if data == "named":  # what stood beside the tokenizer that was named came along, to the letter
        assert files_of(packed_by) == files_of(place / "given") and len(files_of(best)) == 3
    theirs = transformers.AutoTokenizer.from_pretrained(best)
    assert theirs.eos_token == ("<|im_end|>" if data == "named" else "<|endoftext|>")
    out = tmp_path / "out.json"
    limbeck.run("generate", f"--model={best}", f"--prompt={TEXT}", "--max-new-tokens=4", "--ignore-eos", f"--json={out}")
    result = json.loads(out.read_text())["result"]
    assert result["texts"] == [theirs.decode(result["tokens"][0], skip_special_tokens=True)]
    (tmp_path / "t.txt").write_text(TEXT)
    limbeck.run("tokenize", f"--model={best}", f"--input={tmp_path / 't.txt'}", f"--json={tmp_path / 'ids.json'}")
    assert json.loads((tmp_path / "ids.json").read_text())["result"]["ids"] == [theirs(TEXT)["input_ids"]]


def test_a_drawn_student_reads_as_its_data_do_and_not_as_its_folder(limbeck, place, tmp_path):
    best = trained(limbeck, tmp_path, place / "given", place / "parts/train", "--student.init=random")
    assert files_of(best) == files_of(place / "parts/tokenizer")


def test_a_pretrained_student_keeps_its_own_to_the_byte(limbeck, place, tmp_path):
    again = place / "given" / "tokenizer.json"
    assert files_of(trained(limbeck, tmp_path, place / "given", place / "named")) == files_of(place / "given")
    assert again.exists()


@pytest.mark.parametrize("fault", ["another", "damaged", "missing"])
def test_a_tokenizer_that_did_not_pack_the_data_is_not_taken(limbeck, place, tmp_path, fault):
    """Nor does it end the run, which needs none."""
    data = tmp_path / "data"
    prepare("--out", data, "--train-vocabulary", 300, "--split-blank", place / "text.txt")
    file = data / "tokenizer" / "tokenizer.json"
    if fault == "another":
        file.write_bytes((place / "whole/tokenizer/tokenizer.json").read_bytes())
    elif fault == "damaged":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        file.unlink()
    assert files_of(trained(limbeck, tmp_path, place / "bare", data, "--student.init=random")) == {}


def test_another_tokenizer_leaves_nothing_of_the_earlier_one(place, tmp_path):
    prepare("--out", tmp_path, "--split-blank", "--tokenizer", place / "given", place / "text.txt")
    assert len(files_of(tmp_path / "tokenizer")) == 3
    prepare("--out", tmp_path, "--split-blank", "--overwrite", "--train-vocabulary", 300, place / "text.txt")
    assert set(files_of(tmp_path / "tokenizer")) == {"tokenizer.json", "tokenizer_config.json"}
