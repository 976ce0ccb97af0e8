"""A run's event files read by others: by a reader of the test's own, and by TensorBoard where it is installed."""

import json
import math
import os
import struct
import subprocess
import time
from pathlib import Path

import event_file
import pytest
from limbeck_runner import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    build = Path(os.environ.get("LIMBECK_BUILD", "build/release"))
    program = (build if build.is_absolute() else REPOSITORY / build) / "bin" / "trainer_test"
    case = "TensorboardWriter.LeavesARunForOtherReaders"
    subprocess.run(
        [program, f"--gtest_filter={case}"], env={**os.environ, "LIMBECK_METRICS_RUN": str(folder)},
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder


def as_float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_events_hold_the_values_of_the_lines(run):
    series = event_file.read_run(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 202))
    assert sorted(series) == ["eval/kl", "eval/perplexity", "train/kd", "train/loss", "train/tokens"]
    for name in ("loss", "kd", "tokens"):
        assert series[f"train/{name}"] == {line["step"]: as_float32(line[name]) for line in lines}


def test_each_file_opens_with_the_version_and_times_rise(run):
    before = 0.0
    for path in sorted(run.glob("*tfevents*"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        events = [event_file.parse(record) for record in event_file.records(path)]
        assert events[0].file_version == "brain.Event:2"
        for event in events:
            assert before <= event.wall_time <= time.time() + 1
            before = event.wall_time


def test_a_resumed_session_voids_later_steps(run):
    starts, evaluated = [], {}
    for path in run.glob("*tfevents*"):
        for event in map(event_file.parse, event_file.records(path)):
            starts += [event.step] if event.session_status == 1 else []
            if "eval/perplexity" in event.scalars:
                evaluated[event.step] = event.scalars
    assert starts == [201]
    assert evaluated[300]["eval/perplexity"] == 12.5
    assert math.isnan(evaluated[300]["eval/kl"])
    assert event_file.read_run(run)["eval/perplexity"] == {}


def test_a_flipped_bit_anywhere_is_seen(run, tmp_path):
    whole = min(run.glob("*tfevents*"), key=lambda path: path.stat().st_size).read_bytes()
    broken = tmp_path / "broken"
    for position in range(len(whole)):
        broken.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(event_file.BrokenEventFile):
            list(event_file.records(broken))


def test_tensorboard_reads_the_run(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 202))
    assert [event.value for event in events.Scalars("train/loss")] == [as_float32(1.0 / step) for step in steps]
