"""The comparison's own honesty: all contenders do the same work, and the ratios are what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import event_file
import pytest
import torch
from limbeck_runner import REPOSITORY
from transformers import LlamaConfig, LlamaForCausalLM

TOOLS = REPOSITORY / "tools"
sys.path.insert(0, str(TOOLS))
import bench_data  # noqa: E402
import bench_peers  # noqa: E402
import bench_peers_loops as loops  # noqa: E402

TINY = ["--teacher=64x2", "--student=64x1", "--vocabulary=500", "--batch=2", "--length=32", "--steps=4", "--warmup=1",
        "--rounds=1", "--threads=1"]  # fmt: skip


def run(tmp_path, *arguments):
    result = tmp_path / "result.json"
    command = [sys.executable, str(TOOLS / "bench_peers.py"), *TINY, *arguments, f"--json={result}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return done, json.loads(result.read_text()) if result.is_file() else None


def losses_here(folder, *arguments):
    """Of the contenders in Python, in this process: their own processes are measured in the first test."""
    options = bench_peers.parsed([*TINY, *arguments])
    bench = bench_peers.Bench(options, folder)
    loops.make_models(bench.job)
    bench.write_rows()
    chosen = [contender for contender in bench_peers.CONTENDERS if contender.name in options.only]
    return {contender.name: loops.KINDS[contender.kind](bench.job | contender.job)["losses"] for contender in chosen}


def test_the_contenders_compute_the_same_losses(tmp_path):
    names = ["plain", "chunked-tuned"]
    if importlib.util.find_spec("trl"):
        names.append("trl")
    done, result = run(tmp_path, "--dtype=float32", f"--only={','.join(names)},gemm")
    assert done.returncode == 0, done.stdout + done.stderr
    contenders = result["contenders"]
    for name in names:
        assert contenders[name]["losses"][0] == pytest.approx(contenders["plain"]["losses"][0], rel=1e-5), name
        assert len(contenders[name]["seconds"]) == 3
        assert contenders[name]["peak_bytes"][0] > 50e6
        assert 0 < contenders[name]["first_step"][0] < 300
    assert contenders["plain"]["losses"][0][0] > 0
    assert 0 < min(contenders["gemm"]["seconds"]) < min(contenders["plain"]["seconds"])


def test_mixed_dtypes_and_cross_entropy_agree_too(tmp_path):
    losses = losses_here(tmp_path, "--dtype=float32+float16", "--kd-weight=0.5", "--only=plain,chunked")
    plain, chunked = losses["plain"], losses["chunked"]
    # The float16 logits of the teacher are rounded alike, but come out of products of another shape.
    assert chunked == pytest.approx(plain, rel=1e-3)
    assert plain[0] > 0.5 * 6  # half of the cross-entropy of 500 words, ln 500 = 6.2


def test_a_contender_that_fails_is_named_and_the_others_go_on(tmp_path):
    done, result = run(tmp_path, "--only=limbeck,gemm", "--limbeck=/nowhere/limbeck")
    assert done.returncode == 1
    assert "limbeck train" in done.stdout and "failed:" in done.stdout and "/nowhere/limbeck" in done.stdout
    assert result["contenders"]["gemm"]["seconds"] and not result["contenders"]["limbeck"]["seconds"]


def outcome(seconds, peak, first=1.0):
    return bench_peers.Outcome(seconds=seconds, peak_bytes=[peak], first_step=[first], losses=[[1.0]])


def test_ratios_are_theirs_over_ours():
    found = bench_peers.ratios(
        {
            "limbeck": outcome([0.1, 0.2, 0.1], 100, first=1.0),
            "plain": outcome([0.5, 0.3, 0.4], 400),
            "chunked-tuned": outcome([0.2], 250),
            "chunked": outcome([0.3], 200),
            "trl": outcome([0.6], 500, first=8.0),
            "gemm": outcome([0.05], 1),
        }
    )
    assert found == pytest.approx(
        {
            "speed over plain": 4.0,
            "speed over trl": 6.0,
            "speed over the best PyTorch variant": 2.0,
            "memory of plain, ours as a share": 0.25,
            "memory of chunked, ours as a share": 0.5,
            "first step of trl, ours as a share": 0.125,
            "times the GEMM-only bound": 2.0,
        }
    )


def test_the_products_of_the_bound_are_those_of_the_layers(tmp_path):
    config = LlamaConfig(hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=500)  # fmt: skip
    config.save_pretrained(tmp_path)
    forward = loops.products_of(str(tmp_path), 128, backward=False)
    # By hand: q and o 64x64, k and v 64x32, gate, up and down 64x192; each in three layers.
    assert sum(m * n * k * count for (m, n, k), count in forward.items()) == 3 * 128 * (
        2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192
    )
    both = loops.products_of(str(tmp_path), 128, backward=True)
    flops = [sum(m * n * k * count for (m, n, k), count in shapes.items()) for shapes in (forward, both)]
    assert flops[1] == 3 * flops[0]


def test_a_frozen_base_has_no_products_for_its_weights(tmp_path):
    LlamaConfig(hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tmp_path)
    flops = lambda **more: sum(m * n * k * count for (m, n, k), count in loops.products_of(str(tmp_path), 128, **more).items())  # noqa: E731
    adapter = 128 * 4 * (4 * 64 + 64 + 32 + 32 + 64 + 2 * 64 + 192 + 2 * 192 + 64)  # rank x (in + out) of each linear module
    assert flops(backward=True, rank=4) == 2 * flops(backward=False) + 3 * adapter


def test_contenders_train_the_same_adapter(tmp_path):
    job = ("--dtype=float32", "--lora=4", "--kd-weight=0")
    losses = losses_here(tmp_path, *job, "--only=plain,chunked")
    done, result = run(tmp_path, *job, "--only=limbeck,gemm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert min(result["contenders"]["gemm"]["seconds"]) > 0
    losses["limbeck"] = result["contenders"]["limbeck"]["losses"][0]
    assert losses["chunked"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["limbeck"][0] == pytest.approx(losses["plain"][0], rel=1e-5)  # later ones depend on A's random numbers
    assert "LoRA of rank 4 (Python: PEFT)" in done.stdout and "no teacher" in done.stdout


def test_dropout_is_measured_beside_none(tmp_path):
    done, result = run(tmp_path, "--dtype=float32", "--lora=4", "--dropout=0.5", "--kd-weight=0", "--only=limbeck,limbeck-whole")
    assert done.returncode == 0, done.stdout + done.stderr
    losses = {name: outcome["losses"][0] for name, outcome in result["contenders"].items()}
    assert losses["limbeck"][0] == losses["limbeck-whole"][0] and losses["limbeck"][2:] != losses["limbeck-whole"][2:]  # B is zero at first
    assert result["ratios"]["step of limbeck with dropout over without"] > 0 and "dropout 0.5" in done.stdout
    LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)).save_pretrained(tmp_path)
    job = dict(kd_weight=0, student=str(tmp_path), student_dtype="float32", adapter_rank=4, adapter_dropout=0.5)
    rates = [module.p for module in loops.load_pair(job)[1].modules() if isinstance(module, torch.nn.Dropout)]
    assert rates == [0.5] * 7


def test_the_rows_written_are_the_rows_read(tmp_path):
    bench_data.write_rows(tmp_path, rows=5, length=16, vocabulary=50)
    rows = loops.read_rows(tmp_path)
    assert rows.shape == (5, 16) and rows.max() < 50 and rows[:, :-1].min() >= 1
    assert torch.equal(rows[:, -1], torch.zeros(5, dtype=torch.int64))
    assert not torch.equal(rows[0], rows[1])


def test_the_first_step_is_taken_from_the_event_file(tmp_path):
    build = Path(os.environ.get("LIMBECK_BUILD", "build/release"))
    program = (build if build.is_absolute() else REPOSITORY / build) / "bin" / "trainer_test"
    subprocess.run(
        [program, "--gtest_filter=TensorboardWriter.LeavesARunForOtherReaders"],
        env={**os.environ, "LIMBECK_METRICS_RUN": str(tmp_path)}, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    path = min(tmp_path.glob("*tfevents*"))
    events = [event_file.parse(record) for record in event_file.records(path)]
    assert bench_data.step_times(tmp_path)[0] == events[1].wall_time
    assert events[1].step == 1
