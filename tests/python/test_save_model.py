"""A saved model is what transformers would have saved, and a fresh one starts as transformers would start it."""

import json
import math
from pathlib import Path

import model_zoo
import pytest
import torch
import transformers
import transformers_reference as reference
from limbeck_runner import run_program
from safetensors.torch import load_file

FAMILIES = pytest.mark.parametrize("family", model_zoo.FAMILIES, ids=lambda family: family.name)


def resave(model: Path, out: Path, *flags: str) -> Path:
    done = run_program(model, out, *flags, program="resave_model")
    assert done.returncode == 0, done.stderr
    return out


class Written:
    """A model of each family as transformers saved it, and what was saved of it here, for all who look at them."""

    def __init__(self, folder: Path):
        self._folder = folder

    def source(self, family: model_zoo.Family) -> Path:
        folder = self._folder / family.name
        return folder if folder.exists() else model_zoo.write_model(family, folder)

    def saved(self, family: model_zoo.Family) -> Path:
        folder = self._folder / f"{family.name}-saved"
        return folder if folder.exists() else resave(self.source(family), folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    return Written(tmp_path_factory.mktemp("save_model"))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def loaded(family, folder: Path):
    """The model, and what transformers says of how it was loaded."""
    return family.model.from_pretrained(folder, local_files_only=True, attn_implementation=family.attention, output_loading_info=True)


def logits(family, model) -> torch.Tensor:
    return reference.forward(model.eval(), family, model_zoo.make_inputs(family))[family.output]


@FAMILIES
def test_the_file_holds_what_transformers_saved_bit_for_bit(written, family):
    source, saved = written.source(family), written.saved(family)
    wanted, got = stored(source), stored(saved)
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []
    assert json.loads((saved / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@FAMILIES
def test_transformers_loads_it_to_the_same_logits_without_a_warning(written, family):
    (saved, info), (source, _) = loaded(family, written.saved(family)), loaded(family, written.source(family))
    assert torch.equal(logits(family, saved), logits(family, source))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("name", ["llama3-tied", "mixtral", "gpt2", "bert", "distilbert-classifier"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_models_load_in_their_dtype(written, tmp_path, name, dtype):
    family = model_zoo.BY_NAME[name]
    source = written.source(family)
    saved = resave(source, tmp_path / "saved", "--dtype", str(dtype).removeprefix("torch."))
    assert {tensor.dtype for tensor in stored(saved).values()} == {dtype}
    auto = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModel"}.get(family.kind, "AutoModelForSequenceClassification")
    model = getattr(transformers, auto).from_pretrained(saved, dtype="auto", local_files_only=True)
    assert model.dtype == dtype
    theirs = model_zoo.load(family, source, dtype)
    for (name_of, ours), (_, wanted) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(ours, wanted), name_of


def test_shards_are_found_by_transformers(written, tmp_path):
    family = model_zoo.BY_NAME["mixtral"]
    source = written.source(family)
    saved = resave(source, tmp_path / "saved", "--shard", "100000")
    assert len(list(saved.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(family, loaded(family, saved)[0]), logits(family, loaded(family, source)[0]))


@pytest.mark.parametrize("name", ["llama3-tied", "qwen2", "qwen3-moe", "gemma3", "phi3", "gpt2", "bert", "distilbert"])
def test_our_own_forward_reads_it_bit_for_bit(limbeck, written, name):
    family = model_zoo.BY_NAME[name]
    source, saved = written.source(family), written.saved(family)
    inputs = model_zoo.make_inputs(family).tensors
    assert torch.equal(limbeck.forward(saved, inputs)[family.output], limbeck.forward(source, inputs)[family.output])


def is_constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@FAMILIES
def test_a_fresh_model_is_distributed_as_transformers_starts_it(tmp_path, family):
    config = family.config(initializer_range=0.05)
    torch.manual_seed(3)
    family.model(config).save_pretrained(tmp_path / "theirs")
    (tmp_path / "bare").mkdir()
    config_file = tmp_path / "bare" / "config.json"
    config_file.write_text((tmp_path / "theirs" / "config.json").read_text())
    theirs, ours = stored(tmp_path / "theirs"), stored(resave(tmp_path / "bare", tmp_path / "ours", "--random", "3"))
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        got = ours[name]
        assert got.shape == wanted.shape
        if is_constant(wanted):
            assert torch.equal(got, wanted), name
            continue
        # Two samples of one normal distribution: six standard errors of the difference of their deviations.
        bar = 6 * math.sqrt(2 / (2 * wanted.numel()))
        assert abs(float(got.std() / wanted.std()) - 1) < bar, name
        assert abs(float(got.mean())) < 6 * float(wanted.std()) / math.sqrt(got.numel()), name
        zero_rows = (wanted == 0).all(-1) if wanted.dim() == 2 else None
        if zero_rows is not None:
            assert torch.equal((got == 0).all(-1), zero_rows), name


def test_sinusoidal_positions_of_distilbert_are_transformers_own(tmp_path):
    config = model_zoo.BY_NAME["distilbert"].config(sinusoidal_pos_embds=True)
    model = transformers.DistilBertModel(config)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())
    ours = stored(resave(tmp_path / "bare", tmp_path / "ours", "--random", "0"))
    name = "embeddings.position_embeddings.weight"
    torch.testing.assert_close(ours[name], stored(tmp_path / "theirs")[name], rtol=0, atol=1e-6)
