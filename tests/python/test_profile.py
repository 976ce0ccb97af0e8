"""`limbeck profile` as a user runs it, and energy from counters laid out as the kernel and the driver have them."""

from __future__ import annotations

import csv
import json
import os
import threading
import time
from pathlib import Path

import model_zoo
import pytest
import torch
from fake_cuda_work import FOLDER, only_where_built
from limbeck_runner import LimbeckError, build_folder, run_program

from training_work import Work, saved

QUICK = ("--profile.batch=4", "--profile.length=16", "--profile.warmup=1", "--profile.measured=3", "--profile.trials=2",
         "--profile.new_tokens=3", "--profile.energy_seconds=0.05")  # fmt: skip
PRECISIONS = ["float32", "float16", "bfloat16", "int8-dynamic", "int8", "int4", "nf4"]
WORKS = ["forward", "training", "generation"]
RANGE = 65_532_610_987  # microjoules, of a real package


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("profile"), limbeck)


def profiled(recipe: Path, run: Path, *flags: str, **environment) -> dict:
    """The report of --run, which is also that of --json."""
    result = run.with_suffix(".json")
    command = ["profile", recipe, f"--run={run}", "--json", result, "--quiet", "--threads", 2, *QUICK, *flags]
    done = run_program(*command, env=os.environ | environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((run / "profile.json").read_text())
    assert report == json.loads(result.read_text())["result"]
    return report


def rows_of(report: dict, **wanted) -> list[dict]:
    return [row for row in report["rows"] if all(row[key] == value for key, value in wanted.items())]


def row_of(report: dict, **wanted) -> dict:
    (row,) = rows_of(report, **wanted)
    return row


@pytest.fixture(scope="module")
def everything(work, tmp_path_factory) -> tuple[Path, dict]:
    recipe = work.recipe("everything", teacher__kind="none", teacher__model=None)
    run = tmp_path_factory.mktemp("runs") / "everything"
    nothing = str(run / "nothing")
    return run, profiled(recipe, run, "--devices=cpu", LIMBECK_POWERCAP=nothing, LIMBECK_POWER_EVENTS=nothing)


def test_every_precision_at_every_work_is_a_row(everything):
    _, report = everything
    assert [(row["precision"], row["work"]) for row in report["rows"]] == [(p, w) for p in PRECISIONS for w in WORKS]
    assert (report["batch"], report["length"], report["measured"], report["trials"]) == (4, 16, 3, 2)
    for row in report["rows"]:
        if row["refused"]:
            continue
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] and latency["mean"] > 0 and len(latency["trials"]) == 2
        assert row["passes"] == 6
        tokens = 4 * (3 if row["work"] == "generation" else 16)
        assert row["tokens_per_second"] == pytest.approx(1000 * tokens / latency["mean"])
        assert row["rows_per_second"] == pytest.approx(4000 / latency["mean"])
        assert row["peak_rss_bytes"] > row["peak_bytes"] > row["bytes_of_weights"] > 0


def test_frozen_codes_are_refused_for_training_alone_and_say_what_to_do(everything):
    _, report = everything
    refused = [row for row in report["rows"] if row["refused"]]
    assert [(row["precision"], row["work"]) for row in refused] == [
        (precision, "training") for precision in ("int8-dynamic", "int8", "int4", "nf4")
    ]
    for row in refused:
        assert f"weights in {row['precision']} are frozen: --adapter.kind=lora" in row["refused"]
        assert row["latency_ms"] is None and row["energy"] is None and row["modules"] == []


def test_bytes_are_those_of_files_and_of_weights(everything, work):
    _, report = everything
    forward = {row["precision"]: row for row in rows_of(report, work="forward")}
    file = (work.folder / "student" / "model.safetensors").stat().st_size
    payload = sum(parameter.numel() * 4 for parameter in work.student.parameters())
    assert forward["float32"]["bytes_of_weights"] == payload
    assert payload < forward["float32"]["bytes_on_disk"] == pytest.approx(file, rel=0.05)
    assert forward["bfloat16"]["bytes_of_weights"] == payload // 2
    assert forward["int4"]["bytes_of_weights"] < forward["int8"]["bytes_of_weights"] < payload
    for row in forward.values():
        assert row["bytes_on_disk"] or row["bytes_on_disk_reason"]


def test_quality_is_that_of_eval(everything, work):
    run, report = everything
    recipe = work.recipe("evaluated", teacher__kind="none", teacher__model=None)
    for precision, flags in {"float32": [], "bfloat16": ["--student.dtype=bfloat16"], "int8": ["--student.quantize=int8"]}.items():
        out = run.parent / "eval.json"
        dtype = [] if precision == "bfloat16" else ["--student.dtype=float32"]
        work.limbeck.run("eval", str(recipe), *flags, *dtype, "--json", str(out))
        quality = row_of(report, precision=precision, work="forward")["quality"]
        assert (quality["name"], quality["value"]) == ("perplexity", json.loads(out.read_text())["result"]["perplexity"])


def test_modules_divide_the_time_and_are_held_against_the_ceilings(everything):
    _, report = everything
    ceilings = report["machine"]["ceilings"]
    assert set(ceilings["gflops"]) == {"float32", "float16", "bfloat16", "int8-dynamic"} and ceilings["gb_per_second"] > 0
    for row in report["rows"]:
        if row["refused"]:
            continue
        modules = {module["module"]: module for module in row["modules"]}
        assert list(modules)[-1] == "(rest)"
        assert sum(module["share"] for module in row["modules"]) == pytest.approx(1)
        up = modules["student.layers.0.mlp.up_proj"]
        assert up["role"] == "mlp" and up["ms"] > 0 and up["bound"] in ("compute", "memory") and up["roofline_share"] > 0
        if row["work"] == "forward":
            assert up["calls"] == 1 and up["flops"] == 2 * 4 * 16 * 32 * 64
            assert up["gflops"] == pytest.approx(up["flops"] / up["ms"] / 1e6)


def test_without_meters_energy_is_unknown_and_says_why(everything):
    _, report = everything
    assert [(meter["device"], meter["available"]) for meter in report["meters"]] == [("cpu", False)]
    assert "is not there" in report["meters"][0]["reason"]
    for row in report["rows"]:
        if row["refused"]:
            continue
        energy = row["energy"]
        assert energy["joules"] is None and energy["by_device"] == {"cpu": None} and energy["idle_watts"] is None
        assert "nothing is not there" in energy["reason"] and "no power events" in energy["reasons"]["cpu"]
        assert all(module["joules"] is None and module["reason"] for module in row["modules"])


def test_csv_and_trace_say_the_same(everything):
    run, report = everything
    with open(run / "profile.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report["rows"])
    for line, row in zip(lines, report["rows"]):
        assert (line["precision"], line["work"], line["refused"]) == (row["precision"], row["work"], row["refused"] or "")
        assert line["joules"] == "" and (row["refused"] or float(line["mean_ms"]) == row["latency_ms"]["mean"])
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[0] == "float32 on cpu, forward" and len(names) == len(report["rows"])
    spans = [event for event in events if event["ph"] == "X" and event["pid"] == 0]
    assert {"student.embed_tokens", "student.layers.1.self_attn", "student.lm_head"} <= {span["name"] for span in spans}
    inside = next(span for span in spans if span["name"] == "student.layers.0.self_attn.q_proj")
    around = next(span for span in spans if span["name"] == "student.layers.0.self_attn")
    assert around["ts"] <= inside["ts"] and inside["ts"] + inside["dur"] <= around["ts"] + around["dur"] + 1


def test_an_encoder_generates_nothing_and_the_table_says_so(work, limbeck, tmp_path):
    config = model_zoo.transformers.BertConfig(vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                               num_attention_heads=4, max_position_embeddings=64, num_labels=12)  # fmt: skip
    torch.manual_seed(5)
    saved(model_zoo.transformers.BertForSequenceClassification(config), tmp_path / "classifier")
    recipe = work.recipe("classifier", teacher__kind="none", teacher__model=None, student__model=tmp_path / "classifier",
                         data__validation=None)  # fmt: skip
    report = profiled(recipe, tmp_path / "run", "--precisions=float32,bfloat16")
    for row in report["rows"]:
        assert bool(row["refused"]) == (row["work"] == "generation")
    assert "leave" not in rows_of(report, work="generation")[0]["refused"]
    assert "--work=forward,training" in rows_of(report, work="generation")[0]["refused"]
    assert row_of(report, precision="float32", work="forward")["quality"] is None


@pytest.mark.parametrize("flag, message", [
    ("--precisions=float31", 'profile.precisions (--precisions): "float31" is unknown, wanted a dtype, int8'),
    ("--work=sleep", 'profile.work (--work): "sleep" is unknown, wanted some of forward, training, generation'),
    ("--devices=tpu", 'profile.devices (--devices): "tpu": wanted auto, or some of cpu, cuda, cuda:N'),
    ("--precisions=,", "profile.precisions (--precisions): names nothing"),
])  # fmt: skip
def test_what_it_does_not_know_is_refused_before_anything_runs(work, flag, message):
    recipe = work.recipe("unknown", teacher__kind="none", teacher__model=None)
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        work.limbeck.run("profile", str(recipe), flag)
    assert message in str(failure.value)


class Counters:
    """A powercap folder whose counters go at so many watts while it is open."""

    def __init__(self, folder: Path, watts: dict[str, float], start: int = RANGE - 2_000_000):
        self.files, self.start, self._end = {}, start, threading.Event()
        for number, (name, power) in enumerate(watts.items()):
            zone = folder / (f"intel-rapl:{number}" if name.startswith("package") else f"intel-rapl:0/intel-rapl:0:{number}")
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
            self.files[zone / "energy_uj"] = power
        self.folder, self.begin = folder, time.monotonic()
        self._write()
        self._thread = threading.Thread(target=self._run)

    def _write(self):
        seconds = time.monotonic() - self.begin
        for file, power in self.files.items():
            fresh = file.with_suffix(".new")
            fresh.write_text(f"{(self.start + int(seconds * power * 1e6)) % RANGE}\n")
            fresh.rename(file)  # the kernel, too, shows a whole number always

    def _run(self):
        while not self._end.wait(0.001):
            self._write()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def test_joules_are_watts_times_seconds_and_modules_add_up_to_what_is_above_idle(work, tmp_path):
    recipe = work.recipe("energy", teacher__kind="none", teacher__model=None)
    # Starts 2 J before its end: it goes around in the first window.
    with Counters(tmp_path / "powercap", {"package-0": 80, "dram": 20}) as counters:
        report = profiled(recipe, tmp_path / "run", "--precisions=float32", "--devices=cpu", "--profile.energy_seconds=0.3",
                          "--profile.energy_spread=0.2", LIMBECK_POWERCAP=str(counters.folder))  # fmt: skip
    assert [meter["available"] for meter in report["meters"]] == [True, True]
    for row in report["rows"]:
        energy = row["energy"]
        assert energy["reason"] is None and energy["by_device"]["cpu"] == energy["joules"]
        # A machine that draws the same at rest and at work: all of it is idle draw. Files are written every millisecond
        # of a window of 300.
        assert energy["idle_watts"] == pytest.approx(100, rel=0.05)
        assert energy["joules"] > 0 and abs(energy["above_idle"]) <= 0.1 * energy["joules"]
    forward = row_of(report, work="forward")
    known = [module["joules"] for module in forward["modules"] if module["joules"] is not None]
    assert len(known) > 10 and sum(known) == pytest.approx(forward["energy"]["above_idle"], abs=1e-9)
    assert all(module["joules"] is not None or module["reason"] for module in forward["modules"])


def test_train_logs_joules_a_step_where_a_meter_exists_and_nothing_where_not(work, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_POWERCAP", str(tmp_path / "none"))
    monkeypatch.setenv("LIMBECK_POWER_EVENTS", str(tmp_path / "none"))
    without = work.train("unmetered", train__steps="4 steps")
    assert not any("joules" in name for line in without.lines for name in line)
    with Counters(tmp_path / "powercap", {"package-0": 100}) as counters:
        monkeypatch.setenv("LIMBECK_POWERCAP", str(counters.folder))
        run = work.train("metered", "--data.batch_size=64", train__steps="8 steps", train__log_every=4)
    steps = [line for line in run.lines if line["phase"] == "train"]
    assert all(line["joules"] == line["joules_cpu"] > 0 for line in steps)


@only_where_built
def test_a_gpus_rows_work_where_model_and_data_are_placed_together(work, tmp_path):
    recipe = work.recipe("gpu", teacher__kind="none", teacher__model=None, data__validation=None)
    counters = tmp_path / "nvml"
    counters.mkdir()
    (counters / "0").write_text("5000\n")
    environment = {
        "LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_REQUIRE_GPU": "1", "LIMBECK_STAND_IN_NVML": str(counters),
        "LIMBECK_NVML": str(build_folder() / "tests" / "stand_in_nvml.so"),
    }  # fmt: skip
    report = profiled(recipe, tmp_path / "run", "--devices=cpu,cuda", "--precisions=bfloat16,int8-dynamic,int4-sym-dynamic",
                      "--profile.energy=off", "--work=forward", **environment)  # fmt: skip
    rows = {(row["precision"], row["device"]): row for row in report["rows"]}
    for precision in ("bfloat16", "int8-dynamic"):
        for device in ("cpu", "cuda"):
            assert rows[precision, device]["refused"] is None, rows[precision, device]["refused"]
    assert rows["int4-sym-dynamic", "cpu"]["refused"] is None
    assert "for the CPU alone: say int4-sym there, or set device = cpu" in rows["int4-sym-dynamic", "cuda"]["refused"]
    assert {meter["device"] for meter in report["meters"]} == {"cpu", "cuda:0"}
    assert report["machine"]["devices"]["cuda"]["temperature_c"] == 40


@only_where_built
def test_a_run_on_the_cpu_reads_no_gpus_meter(work, tmp_path):
    recipe = work.recipe("cpu", teacher__kind="none", teacher__model=None, data__validation=None)
    counters = tmp_path / "nvml"
    counters.mkdir()
    (counters / "0").write_text("5000\n")
    environment = {
        "LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_STAND_IN_NVML": str(counters),
        "LIMBECK_NVML": str(build_folder() / "tests" / "stand_in_nvml.so"),
    }  # fmt: skip
    report = profiled(recipe, tmp_path / "run", "--devices=cpu", "--precisions=float32", "--work=forward", **environment)
    assert {meter["device"] for meter in report["meters"]} == {"cpu"}
    assert list(row_of(report)["energy"]["by_device"]) == ["cpu"]
    assert not (counters / "readings").exists()


@only_where_built
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_check_refuses_every_precision_that_the_device_has_not_and_no_other(work, tmp_path, device):
    """What check says on meta is what a forward on the device meets."""
    recipe = work.recipe("matrix", teacher__kind="none", teacher__model=None, data__validation=None)
    formats = [line.split()[0] for line in run_program("list", "quantizers").stdout.splitlines() if line.strip()]
    formats = [name for name in formats if name.startswith(("int", "nf"))]
    assert "int4-sym-g32-dynamic" in formats
    environment = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_REQUIRE_GPU": "1"}
    names = [f"{name}+{dtype}" for name in formats for dtype in ("float32", "bfloat16")]
    report = profiled(recipe, tmp_path / "run", f"--devices={device}", f"--precisions={','.join(names)}", "--work=forward",
                      "--profile.energy=off", "--profile.measured=1", "--profile.trials=1", **environment)  # fmt: skip
    for row in report["rows"]:
        name, dtype = row["precision"].split("+")
        done = run_program("check", recipe, f"--student.quantize={name}", f"--student.dtype={dtype}", f"--device={device}",
                           env=os.environ | environment)  # fmt: skip
        assert (done.returncode != 0) == bool(row["refused"]), (row["precision"], row["refused"], done.stderr)
        if row["refused"]:
            assert done.returncode == 2 and row["refused"] in done.stderr and "set device = cpu" in row["refused"]
