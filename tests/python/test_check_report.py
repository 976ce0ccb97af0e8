"""What `limbeck check` tells of the student: what trains, what is tied, and what a quantized one lacks."""

import json
import re

import pytest
import transformers
from limbeck_runner import REPOSITORY, Limbeck

from training_work import VOCABULARY, Work

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    work = Work(tmp_path_factory.mktemp("check"), limbeck)
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, torch_dtype="float32", **SMALL)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(work.folder / "tied")
    return work


def checked(work, *flags, **keys):
    out = work.folder / "check.json"
    done = Limbeck().run("check", str(work.recipe("check", **keys)), *flags, "--json", str(out))
    return json.loads(out.read_text())["result"], done.stdout, done.stderr


def count_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_what_trains_is_counted(work):
    whole = count_of(work.student)
    _, said, warned = checked(work)
    assert f"Trained: {whole} of {whole} parameters of the student and its projectors (100 %)" in said and warned == ""
    result, said, _ = checked(work, adapter__kind="lora", adapter__rank=4, adapter__target="q_proj")
    q_proj = work.student.model.layers[0].self_attn.q_proj
    adapter = 2 * 4 * (q_proj.in_features + q_proj.out_features)  # two layers
    assert result["trained_parameters"] == adapter
    assert f"Trained: {adapter} of {whole + adapter} parameters" in said and f"({100 * adapter / (whole + adapter):.3g} %)" in said


def test_a_tied_head_says_so(work):
    result, said, _ = checked(work, student__model=work.folder / "tied", student__init="random")
    head = next(line for line in said.splitlines() if line.startswith("student.lm_head"))
    assert " tied " in head, head
    tied = {row["module"] for row in result["modules"] if row["tied"]}
    assert tied == {"student.lm_head"}


def test_a_quantized_student_without_an_adapter_is_warned_of(work):
    result, _, warned = checked(work, student__quantize="nf4")
    trained, whole = result["trained_parameters"], count_of(work.student)
    assert 0 < trained < whole
    assert "(" in warned and f"quantized weights are frozen, and only {trained} of {whole} parameters train" in warned
    assert checked(work, student__quantize="nf4", adapter__kind="lora")[2] == ""


RECIPES = sorted((REPOSITORY / "recipes").glob("*.ini"))
WIDEST = 100


def show(recipe, tmp_path, *flags):
    out = tmp_path / "check.json"
    done = Limbeck().run("check", str(recipe), *flags, "--json", str(out))
    return done.stdout, json.loads(out.read_text())["result"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_line_is_wider_than_a_page(recipe, tmp_path):
    said, _ = show(recipe, tmp_path)
    widest = max(said.splitlines(), key=len)
    print(len(widest), widest)
    assert len(widest) <= WIDEST, widest


def test_every_dtype_and_place_is_still_said(tmp_path):
    """Each once: a path below the table, a dtype beside its module, or under it where it is another than the stored one."""
    recipe = REPOSITORY / "recipes" / "check_small.ini"
    said, result = show(recipe, tmp_path)
    numbers = dict(re.findall(r"^ *(\d+)  (\S.*)$", said, re.M))
    assert said.count("recipes/check_small.ini:") == len(numbers) == len({row["from"] for row in result["modules"]})
    for row in result["modules"]:
        line = next(line for line in said.splitlines() if line.startswith(f"{row['module']} "))
        assert numbers[line.split()[-1]] == row["from"] and line.split()[1] == row["storage"], line
    lines = said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("student.layers.*.mlp.up_proj"))
    assert lines[at].split()[1] == "bfloat16" and lines[at + 1].split() == ["in,", "out", "float32"]
    assert "all on cpu" in said
    for cast in result["casts"]:
        place = re.sub(r"\.hidden\.\d+", ".hidden.*", cast["place"])
        assert any(line.startswith(place) and cast["from"] in line and cast["to"] in line for line in lines), place
