"""tools/gpu_arithmetic.py against numbers worked out by hand."""

import subprocess
import sys

import pytest
from limbeck_runner import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import gpu_arithmetic  # noqa: E402
import gpu_check_cards  # noqa: E402
from gpu_arithmetic import Shape, Step  # noqa: E402

TINY = Step(student=Shape(width=8, inner=16, layers=2, heads=2, kv_heads=1, head_size=4),
            teacher=Shape(width=16, inner=32, layers=1, heads=4, kv_heads=2, head_size=4), batch=1, length=4, vocabulary=10)  # fmt: skip


def test_a_tiny_step_by_hand():
    # Student, a layer: q and o 8x8, k and v 8x4, three of 8x16: 128 + 64 + 384 = 576. Teacher: 16x16, 16x8, 16x32: 2,304.
    assert TINY.student.linear_weights() == 1152 and TINY.teacher.linear_weights() == 2304
    # With the tied head of 80, two norms of 8 and two of 4 a layer, one of 8 at the end.
    assert TINY.student.parameters(10) == 1152 + 80 + 2 * 24 + 8
    found = {cost.operator: cost for cost in gpu_arithmetic.costs(TINY)}
    assert found["linear layers"].flops == 2 * 4 * (3 * 1152 + 2304)
    assert found["head: products"].flops == 2 * 4 * 10 * (3 * 8 + 16)
    # 30 bytes a pair of logits: 8 written, 8 read, 8 read, 2 written, 4 read.
    assert found["head: passes over logits"].moved == 4 * 10 * 30
    # Scores and values, 2 FLOPs an element each, half of 4x4: student 2 heads of 4 in 2 layers, teacher 4 heads in 1.
    assert gpu_arithmetic.attention_flops(TINY.student, TINY) == 2 * 2 * (2 * 2 * 16 * 4 // 2)
    assert found["attention"].flops == 3.5 * 512 + 512
    # Forward 6 bytes, backward 10, of 4 tokens x 16 x 2 layers; the teacher's forward 6 of 4 x 32.
    assert found["gated activation"].moved == 16 * 128 + 6 * 128
    assert found["AdamW"].moved == 28 * 1288
    assert gpu_arithmetic.model_flops(TINY) == 3 * (8 * (1152 + 80) + 512) + 8 * (2304 + 160) + 512


def test_attention_is_estimated_by_both_ways_apart():
    two, three = (gpu_arithmetic.ATTENTION[version] for version in (2, 3))
    # 2 of 5 TFLOP at 0.5 and 3 at 0.25 take 4 and 12.
    assert gpu_arithmetic.Attention(0.5, 0.25, "").efficiency(2, 3) == 5 / 16
    assert two.backward < three.backward < two.forward < three.forward < 1
    found = {version: {cost.operator: cost for cost in gpu_arithmetic.costs(Step(attention=version))} for version in (2, 3)}
    assert all(found[2][name].flops == found[3][name].flops for name in found[2])
    assert [name for name in found[2] if found[2][name] != found[3][name]] == ["attention"]


def test_the_floor_is_the_larger_of_two():
    h100 = gpu_check_cards.card_named("NVIDIA H100 80GB HBM3")
    assert h100.floor_seconds(989e12, 1) == 1 and h100.floor_seconds(1, 3.35e12) == 1
    assert h100.floor_seconds(67e12, 1, "float32") == 1


def test_the_default_step_is_that_of_qwen3():
    assert gpu_arithmetic.QWEN3_06B.parameters(151936) == pytest.approx(596e6, rel=1e-3)  # as on its model card
    assert gpu_arithmetic.QWEN3_17B.parameters(151936) == pytest.approx(1.72e9, rel=1e-3)


@pytest.mark.parametrize("said, name", [("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"),
                                        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), ("NVIDIA A100-SXM4-80GB", "A100"),
                                        ("NVIDIA B200", "B200")])  # fmt: skip
def test_cards_by_what_the_driver_calls_them(said, name):
    assert gpu_check_cards.card_named(said).name == name


def test_an_unknown_card_has_no_figures():
    assert gpu_check_cards.card_named("NVIDIA GB200") is None and gpu_check_cards.card_named("fake CUDA device") is None


def test_the_table_and_a_refusal():
    tool = REPOSITORY / "tools" / "gpu_arithmetic.py"
    done = subprocess.run([sys.executable, tool, "--card=B200", "--batch=1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "nothing measured: one B200, 1x2048" in done.stdout
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")][-1] == "step"
    assert any(line.startswith("| attention ") and "cuDNN's, which does, is left out" in line for line in done.stdout.splitlines())
    done = subprocess.run([sys.executable, tool, "--student=1,2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "'1,2': wanted six whole numbers" in done.stderr
