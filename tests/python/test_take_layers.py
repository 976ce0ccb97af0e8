"""Layers taken from a model: the smaller model computes what the larger one does with those layers alone."""

import copy
import json

import pytest
import torch
import warm_python
from limbeck_runner import REPOSITORY
from transformers import (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, DistilBertConfig,
                          Gemma3TextConfig, GPT2Config, LlamaConfig)  # fmt: skip

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 5, "vocab_size": 90}
KEYED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1}
CONFIGS = {
    "llama": LlamaConfig(**KEYED),
    "gemma3": Gemma3TextConfig(**KEYED, head_dim=8, sliding_window=4, sliding_window_pattern=2),
    "gpt2": GPT2Config(n_embd=32, n_layer=5, n_head=4, vocab_size=90, bos_token_id=None, eos_token_id=1),
    "bert": BertConfig(**SIZES),
    "bert-masked": BertConfig(**SIZES, architectures=["BertForMaskedLM"]),
    "distilbert": DistilBertConfig(dim=32, hidden_dim=48, n_heads=4, n_layers=5, vocab_size=90),
}
LAYER_LISTS = ("model.layers", "transformer.h", "encoder.layer", "transformer.layer", "bert.encoder.layer")


def take(*arguments):
    return warm_python.completed([REPOSITORY / "tools" / "take_layers.py", *arguments], timeout=60)


def kind_of(name):
    return AutoModelForMaskedLM if "masked" in name else AutoModel if "bert" in name else AutoModelForCausalLM


def make(name):
    torch.manual_seed(5)
    model = kind_of(name).from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # as made, norms and biases are alike in all layers
    return model


def with_layers(model, layers):
    """The model itself, its list of layers replaced in memory."""
    model = copy.deepcopy(model)
    for path in LAYER_LISTS:
        try:
            modules = model.get_submodule(path)
        except AttributeError:
            continue
        kept = torch.nn.ModuleList(modules[i] for i in layers)
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, kept)
        for key in ("num_hidden_layers", "n_layer", "n_layers"):
            if hasattr(model.config, key):
                setattr(model.config, key, len(layers))
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [model.config.layer_types[i] for i in layers]
        return model
    raise AssertionError("no list of layers")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_smaller_model_is_the_larger_one_without_the_others(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    done = take(tmp_path / "whole", tmp_path / "part", "--layers=0,2,3")
    assert done.returncode == 0, done.stderr
    part = kind_of(name).from_pretrained(tmp_path / "part").eval()
    ids = torch.randint(2, 90, (2, 11), generator=torch.Generator().manual_seed(1))
    no_cache = {} if "bert" in name else {"use_cache": False}  # it goes by the numbers the layers were made with
    with torch.no_grad():
        got, wanted, whole = (
            m(input_ids=ids, **no_cache)[0] for m in (part, with_layers(model, [0, 2, 3]), model)
        )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    assert float((whole - wanted).abs().max()) > 0.01  # or the test would see nothing
    assert (tmp_path / "part" / "tokenizer.json").read_text() == "{}"


def test_layer_types_follow_their_layers(tmp_path):
    make("gemma3").save_pretrained(tmp_path / "whole")
    before = json.loads((tmp_path / "whole" / "config.json").read_text())["layer_types"]
    assert take(tmp_path / "whole", tmp_path / "part", "--layers=4,1,1").returncode == 0
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert config["layer_types"] == [before[4], before[1], before[1]] and config["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    "layers, said",
    [("0,5", "--layers 5: the model has layers 0 to 4"), ("0;1", "--layers 0;1: wanted numbers such as 0,2,4")],
)
def test_refusals_are_one_line(tmp_path, layers, said):
    make("llama").save_pretrained(tmp_path / "whole")
    done = take(tmp_path / "whole", tmp_path / "part", f"--layers={layers}")
    assert done.returncode == 2 and done.stderr == f"take_layers: {said}\n"
    assert not (tmp_path / "part").exists()
    assert take(tmp_path / "nothing", tmp_path / "part", "--layers=0").stderr.count("\n") == 1


def test_a_disk_without_room_is_said_and_leaves_no_half_folder(tmp_path):
    """A limit of file sizes stands in for the disk; typed again with room, the same line works."""
    make("llama").save_pretrained(tmp_path / "whole")
    command = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [REPOSITORY / "tools" / "take_layers.py", tmp_path / "whole", tmp_path / "made" / "part", "--layers=0,2"]
    done = warm_python.completed(["-c", command, *words], timeout=60)
    assert done.returncode == 6 and "raise the limit of file sizes (ulimit -f)" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "made").exists()
    assert take(*words[1:]).returncode == 0
