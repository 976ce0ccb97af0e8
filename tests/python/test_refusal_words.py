"""What refusals never say: a range without a number in it, or a suggestion without a name."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_command_line import refused
from test_hostile_use import IDS, forward
from training_work import Work, llama, saved

from limbeck_runner import Limbeck

FAR = "zzzzzzzzzzzzzzzzzzzz"  # is a misspelling of nothing


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("words"), Limbeck())


@pytest.fixture
def folder(tmp_path):
    saved(llama(32, 2, seed=2), tmp_path / "model")
    save_file(IDS, tmp_path / "in.safetensors")
    return tmp_path


def test_an_input_that_the_model_has_no_values_for_is_refused_as_such(folder):
    save_file(IDS | {"token_type_ids": torch.zeros(1, 6, dtype=torch.long)}, folder / "in.safetensors")
    assert refused(*forward(folder, folder / "out"), "--quiet", code=3) == (
        "input token_type_ids: this model takes none, leave it out")


def named_anew(path, change):
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def refusal_of_weights(folder):
    path = folder / "model" / "model.safetensors"
    names = iter(f"{i}{FAR}" for i in range(100))
    named_anew(path, lambda _: next(names))
    return refused(*forward(folder, folder / "out"), "--quiet", code=4)


def refusal_of_peft(folder):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A": torch.ones(4, 32), "lora_B": torch.ones(32, 4)}
    tensors = {f"base_model.model.{FAR}.{part}.weight": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return refused(*forward(folder, folder / "out"), "--adapter", folder / "adapter", "--quiet", code=4)


def refusal_of_npt(folder, work):
    run = work.train("npt", adapter__kind="npt", train__steps="1 steps", data__batch_size=2).folder
    path = run / "final" / "adapter_model.safetensors"
    names = iter(f"{i}{FAR}" for i in range(100))
    named_anew(path, lambda _: next(names))
    return refused(*forward(folder, folder / "out"), "--adapter", run / "final", "--quiet", code=4)


@pytest.mark.parametrize("what", ["weights", "peft", "npt", "target"])
def test_nothing_near_is_not_offered(folder, work, what):
    if what == "target":
        message = refused("check", work.recipe("far", adapter__kind="lora", adapter__target=FAR), "--quiet")
        assert f"{FAR} names no linear module, embedding or expert stack: 'limbeck check RECIPE' lists its modules" in message
    elif what == "weights":
        message = refusal_of_weights(folder)
    else:
        message = refusal_of_peft(folder) if what == "peft" else refusal_of_npt(folder, work)
    assert {"weights": "missing from the checkpoint: model.embed_tokens.weight, ", "peft": "of this llama model", "target": FAR,
            "npt": "A_proj.weight is missing: "}[what] in message, message  # fmt: skip
    assert not re.search("nearest|did you mean", message), message
