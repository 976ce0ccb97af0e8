"""tools/gpu_arithmetic.py: sizes against transformers, operators against numbers computed by hand."""

import json
import subprocess
import sys

import pytest
from limbeck_runner import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import gpu_arithmetic as ga  # noqa: E402

TOOL = REPOSITORY / "tools" / "gpu_arithmetic.py"
TINY = ga.Model(hidden=4, layers=3, heads=2, key_heads=1, depth=2, inner=5, vocabulary=7)


@pytest.mark.parametrize("name", ga.MODELS)
def test_sizes_are_those_of_transformers(name):
    import torch
    import transformers

    m = ga.MODELS[name]
    config = transformers.Qwen3Config(
        vocab_size=m.vocabulary, hidden_size=m.hidden, intermediate_size=m.inner, num_hidden_layers=m.layers,
        num_attention_heads=m.heads, num_key_value_heads=m.key_heads, head_dim=m.depth, tie_word_embeddings=True)  # fmt: skip
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(config)
    assert m.parameters == sum(p.numel() for p in model.parameters())


def test_products_of_a_layer_by_hand():
    # q 4x4, k and v 4x2, o 4x4, gate, up and down 4x5: 16 + 8 + 8 + 16 + 60 = 108 weights.
    assert TINY.layer_weights == 108
    flops, moved = ga.products(TINY, tokens=10, passes=1)
    assert flops == 3 * 2 * 10 * 108
    # In and out of each product: 8 + 6 + 6 + 8 + 9 + 9 + 9 = 55 numbers a token, and the weights once.
    assert moved == 3 * 2 * (10 * 55 + 108)
    assert ga.products(TINY, tokens=10, passes=3) == (3 * flops, 3 * moved)


def test_attention_by_hand():
    # 2 rows of 10: half a square of 100 scores, 2 heads of width 2, two products of 2 FLOP a number; backward five.
    forward = ga.attention(TINY, rows=2, length=10, backward=False)
    assert forward == (3 * 2 * 2 * 2 * 2 * 2 * 50, 3 * 2 * 2 * 10 * 2 * (4 + 2))
    assert ga.attention(TINY, rows=2, length=10, backward=True) == (forward[0] * 2.5, forward[1] * 2)


def test_the_head_by_hand():
    wide = ga.Model(hidden=6, layers=1, heads=2, key_heads=1, depth=2, inner=5, vocabulary=7)
    rows = {o.name: (o.flops, o.bytes) for o in ga.head(TINY, wide, tokens=10)}
    assert rows == {
        "logits of the student": (2 * 70 * 4, 4 * 70 + 2 * 28),
        "logits of the teacher": (2 * 70 * 6, 4 * 70 + 2 * 42),
        "row statistics": (0, 2 * 2 * 4 * 70),
        "gradient by the logits": (0, 2 * 4 * 70 + 2 * 70),
        "gradient by the states": (2 * 70 * 4, 2 * (70 + 28)),
        "gradient by the table": (2 * 70 * 4, 2 * 70 + 2 * 4 * 28),
    }


def test_the_longer_of_the_two_counts():
    card = ga.Card(teraflops=1.0, terabytes=1.0)
    bound_by_products = ga.Operator("a", "a", flops=8e12, bytes=1e12, share=0.5)
    assert bound_by_products.floor_ms(card) == pytest.approx(8000) and bound_by_products.estimate_ms(card) == pytest.approx(16000)
    bound_by_memory = ga.Operator("a", "a", flops=1e12, bytes=8.5e12, share=0.5)
    assert bound_by_memory.floor_ms(card) == pytest.approx(8500) and bound_by_memory.estimate_ms(card) == pytest.approx(10000)


def run(*arguments):
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=60)


def test_groups_are_the_sums_of_their_operators():
    done = run("--json", "--card", "H200", "--teacher", "8B", "--rows", "2", "--length", "512")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["card"] == "H200" and found["tokens"] == 1024
    for key in ("floor_ms", "estimate_ms"):
        whole = sum(o[key] for o in found["operators"])
        assert found["groups"][ga.STEP][key] == pytest.approx(whole)
        assert sum(row[key] for name, row in found["groups"].items() if name != ga.STEP) == pytest.approx(whole)
    assert all(0 < o["floor_ms"] < o["estimate_ms"] for o in found["operators"])


def test_the_table_says_what_it_is_and_names_the_targets():
    done = run()
    assert done.returncode == 0 and "by arithmetic, not measured" in done.stdout
    for name, wanted in ga.TARGET_MS.items():
        assert f"target of {name}: {wanted:g} ms; estimate " in done.stdout
    assert "target" not in run("--card", "H200").stdout  # they are for one card and one pair


@pytest.mark.parametrize("flags", [("--rows", "0"), ("--card", "H1"), ("--student", "9B"), ("--length", "-1")])
def test_what_cannot_be_is_refused(flags):
    done = run(*flags)
    assert done.returncode == 2 and flags[0] in done.stderr and "Traceback" not in done.stderr
