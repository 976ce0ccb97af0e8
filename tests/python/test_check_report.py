"""What `limbeck check` tells of the student: what trains, what is tied, and what a quantized one lacks."""

import json

import pytest
import transformers
from limbeck_runner import Limbeck

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
