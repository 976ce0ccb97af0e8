"""`limbeck profile` as a user runs it, and energy from counters laid out as the kernel and the driver have them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import model_zoo
import pytest
import torch
from fake_cuda_work import FOLDER, only_where_built, student_of_experts
from limbeck_runner import LimbeckError, build_folder, run_program

from training_work import Work, saved

QUICK = ("--profile.batch=4", "--profile.length=16", "--profile.warmup=1", "--profile.measured=3", "--profile.trials=2",
         "--profile.new_tokens=3", "--profile.energy_seconds=0.05")  # fmt: skip
PRECISIONS = ["float32", "float16", "bfloat16", "int8-dynamic", "int8", "int4", "nf4"]
WORKS = ["forward", "training", "generation"]
ALONE = {"teacher__kind": "none", "teacher__model": None, "objective__alpha": 0}
RANGE = 65_532_610_987  # microjoules, of a real package


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("profile"), limbeck)


def profiled(recipe: Path, run: Path, *flags: str, **environment) -> dict:
    """The report of --run, which is also that of --json."""
    result = run.with_suffix(".json")
    named = {flag.split("=")[0] for flag in flags}
    quick = [flag for flag in QUICK if flag.split("=")[0] not in named]
    command = ["profile", recipe, f"--run={run}", "--json", result, "--quiet", "--threads", 1, *quick, *flags]
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
    recipe = work.recipe("everything", **ALONE)
    run = tmp_path_factory.mktemp("runs") / "everything"
    nothing = str(run / "nothing")
    return run, profiled(recipe, run, "--devices=cpu", LIMBECK_POWERCAP=nothing, LIMBECK_POWER_EVENTS=nothing)


def test_every_precision_at_every_work_is_a_row(everything, work):
    _, report = everything
    assert [(row["precision"], row["work"]) for row in report["rows"]] == [(p, w) for p in PRECISIONS for w in WORKS]
    assert (report["batch"], report["length"], report["measured"], report["trials"]) == (4, 16, 3, 2)
    for row in report["rows"]:
        if row["refused"]:
            continue
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] and latency["mean"] > 0 and len(latency["trials"]) == 2
        assert (row["passes"], row["passes_asked"], row["cut"]) == (6, 6, False)
        read = row["read"]
        assert (read["from"], read["reason"], read["rows"]) == ("data.train" if row["work"] == "training" else "data.validation", None, 4)
        documents = work.documents if row["work"] == "training" else work.held_out
        assert read["tokens"] == sum(min(16, len(document)) for document in documents[:4])
        tokens = 4 * 3 if row["work"] == "generation" else read["tokens"]
        assert row["tokens_per_second"] == pytest.approx(1000 * tokens / latency["mean"])
        assert row["rows_per_second"] == pytest.approx(4000 / latency["mean"])
        assert row["peak_rss_bytes"] > row["peak_bytes"] > row["bytes_of_weights"] > 0


def test_passes_that_time_cut_are_said_to_be_and_rows_that_are_none(work, tmp_path):
    recipe = work.recipe("cut", **ALONE, data__validation=None, data__train=None)
    report = profiled(recipe, tmp_path / "run", "--precisions=float32", "--work=forward", "--devices=cpu", "--profile.measured=1000000",
                      "--profile.most_seconds=0.2", "--profile.energy=off")  # fmt: skip
    row = row_of(report)
    assert row["passes"] < row["passes_asked"] == 2_000_000 and row["cut"] is True
    assert (row["read"]["from"], row["read"]["reason"], row["read"]["tokens"]) == ("random ids", "the recipe names no data", 4 * 16)
    with open(tmp_path / "run" / "profile.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["passes"], line["passes_asked"], line["cut"], line["read"]) == (str(row["passes"]), "2000000", "true", "random ids")
    shown = run_program("profile", recipe, "--precisions=float32", "--work=forward", "--devices=cpu", *QUICK[:3], "--profile.measured=1000000",
                        "--profile.most_seconds=0.2", "--profile.energy=off").stdout  # fmt: skip
    assert "of 1000000" in shown or "of 5000000" in shown
    assert "the row was cut when its time was up (profile.most_seconds" in shown
    assert "a pass of forward: 4 rows of random ids, 64 tokens without padding (the recipe names no data)" in shown


def test_the_resident_peak_is_the_kernels_of_the_process_that_was_timed(work, tmp_path):
    """Whoever looks into the work does it elsewhere: half of a gibibyte that only observing took would show."""
    recipe = work.recipe("resident", **ALONE)
    rows = [row_of(profiled(recipe, tmp_path / name, "--precisions=float32", "--work=forward", "--devices=cpu", f"--profile.energy={energy}"))
            for name, energy in (("whole", "modules"), ("rows", "off"))]  # fmt: skip
    assert rows[0]["peak_rss_bytes"] == pytest.approx(rows[1]["peak_rss_bytes"], rel=0.05)
    assert all(row["modules"] for row in rows)


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
    recipe = work.recipe("evaluated", **ALONE)
    for precision, flags in {"float32": [], "bfloat16": ["--student.dtype=bfloat16"], "int8": ["--student.quantize=int8"]}.items():
        out = run.parent / "eval.json"
        dtype = [] if precision == "bfloat16" else ["--student.dtype=float32"]
        work.limbeck.run("eval", str(recipe), *flags, *dtype, "--json", str(out))
        quality = row_of(report, precision=precision, work="forward")["quality"]
        assert (quality["name"], quality["value"]) == ("perplexity", json.loads(out.read_text())["result"]["perplexity"])


def test_with_a_teacher_the_update_has_it_and_the_forward_not(work, limbeck, tmp_path):
    recipe = work.recipe("distilled")
    report = profiled(recipe, tmp_path / "run", "--precisions=float32", "--work=forward,training", "--profile.energy=off")
    forward, training = report["rows"]
    assert forward["refused"] is None and training["refused"] is None
    heard = {row["work"]: {module["module"].split(".")[0] for module in row["modules"]} for row in report["rows"]}
    assert heard == {"forward": {"student", "(rest)"}, "training": {"student", "teacher", "(rest)"}}
    assert training["peak_bytes"] > forward["peak_bytes"]
    out = tmp_path / "eval.json"
    limbeck.run("eval", str(recipe), "--json", str(out))
    assert forward["quality"]["value"] == json.loads(out.read_text())["result"]["perplexity"]
    assert forward["energy"]["reason"] == "not asked for (profile.energy = off)"


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
    recipe = work.recipe("classifier", **ALONE, student__model=tmp_path / "classifier",
                         data__validation=None)  # fmt: skip
    report = profiled(recipe, tmp_path / "run", "--precisions=float32,bfloat16")
    for row in report["rows"]:
        assert bool(row["refused"]) == (row["work"] == "generation")
    assert "leave" not in rows_of(report, work="generation")[0]["refused"]
    assert "--work=forward,training" in rows_of(report, work="generation")[0]["refused"]
    forward = row_of(report, precision="float32", work="forward")
    assert forward["quality"] is None and forward["quality_reason"] == "the recipe names no data.validation"


@pytest.mark.parametrize("flag, message", [
    ("--precisions=float31", 'profile.precisions (--precisions): "float31" is unknown, wanted a dtype, int8'),
    ("--work=sleep", 'profile.work (--work): "sleep" is unknown, wanted some of forward, training, generation'),
    ("--devices=tpu", 'profile.devices (--devices): "tpu": wanted auto, or some of cpu, cuda, cuda:N'),
    ("--precisions=,", "profile.precisions (--precisions): names nothing"),
])  # fmt: skip
def test_what_it_does_not_know_is_refused_before_anything_runs(work, flag, message):
    recipe = work.recipe("unknown", **ALONE)
    with pytest.raises(LimbeckError, match="exit 2") as failure:
        work.limbeck.run("profile", str(recipe), flag)
    assert message in str(failure.value)


@pytest.fixture
def hundred_watts(tmp_path, monkeypatch) -> Path:
    """The kernel's own clock as its event of energy: a nanosecond is 1e-7 J, at rest and at work."""
    events = tmp_path / "power"
    (events / "events").mkdir(parents=True)
    (events / "type").write_text("1\n")  # PERF_TYPE_SOFTWARE
    (events / "cpumask").write_text("0\n")
    (events / "events" / "energy-pkg").write_text("event=0x00\n")  # PERF_COUNT_SW_CPU_CLOCK
    (events / "events" / "energy-pkg.scale").write_text("1e-7\n")
    monkeypatch.setenv("LIMBECK_POWERCAP", str(tmp_path / "none"))
    monkeypatch.setenv("LIMBECK_POWER_EVENTS", str(events))
    return events


def require_meter(report: dict) -> None:
    (meter,) = report["meters"]
    if not meter["available"]:
        assert "cannot be opened" in meter["reason"]
        pytest.skip(meter["reason"])


def test_joules_are_watts_times_seconds_and_modules_add_up_to_what_is_above_idle(work, tmp_path, hundred_watts):
    recipe = work.recipe("energy", **ALONE, data__validation=None)
    report = profiled(recipe, tmp_path / "run", "--precisions=float32", "--devices=cpu", "--profile.energy_seconds=0.1",
                      "--profile.energy_spread=1")  # fmt: skip
    require_meter(report)
    for row in report["rows"]:
        energy = row["energy"]
        assert energy["reason"] is None and energy["by_device"]["cpu"] == energy["joules"] and energy["windows"] == 3
        # Within what reading takes at both ends of a window of 0.1 s.
        assert energy["idle_watts"] == pytest.approx(100, rel=0.02)
        assert energy["joules"] == pytest.approx(100 * energy["seconds"], rel=0.02)
        assert abs(energy["above_idle"]) <= 0.04 * energy["joules"]
    forward = row_of(report, work="forward")
    known = [module["joules"] for module in forward["modules"] if module["joules"] is not None]
    assert len(known) > 10 and sum(known) == pytest.approx(forward["energy"]["above_idle"], abs=1e-9)
    assert all(module["joules"] is not None or module["reason"] for module in forward["modules"])
    unknown = {module["reason"] for row in rows_of(report, work="training") for module in row["modules"]}
    assert unknown == {"modules are replayed for the forward alone"}


def test_counters_of_powercap_are_read_as_the_kernel_lays_them_out(work, tmp_path):
    recipe = work.recipe("powercap", **ALONE, data__validation=None)
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0/intel-rapl:0:0": "core", "intel-rapl:0/intel-rapl:0:1": "dram"}
    for zone, name in zones.items():
        folder = tmp_path / "powercap" / zone
        folder.mkdir(parents=True)
        for file, text in {"name": name, "energy_uj": 5, "max_energy_range_uj": RANGE}.items():
            (folder / file).write_text(f"{text}\n")
    report = profiled(recipe, tmp_path / "run", "--precisions=float32", "--devices=cpu", "--work=forward",
                      "--profile.energy=rows", LIMBECK_POWERCAP=str(tmp_path / "powercap"))  # fmt: skip
    assert [meter["name"].split(" (")[0] for meter in report["meters"]] == ["RAPL package-0", "RAPL dram"]
    assert row_of(report)["energy"]["joules"] == 0  # nobody moved them, and they are there
    (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").unlink()
    report = profiled(recipe, tmp_path / "again", "--precisions=float32", "--devices=cpu", "--work=forward",
                      LIMBECK_POWERCAP=str(tmp_path / "powercap"), LIMBECK_POWER_EVENTS=str(tmp_path / "none"))  # fmt: skip
    energy = row_of(report)["energy"]
    assert energy["joules"] is None and "intel-rapl:0/energy_uj cannot be read" in energy["reason"]


def test_train_logs_joules_a_step_where_a_meter_exists(work, hundred_watts):
    run = work.train("metered", "--data.batch_size=32", train__steps="6 steps")
    steps = [line for line in run.lines if line["phase"] == "train"]
    if "joules" not in steps[0]:
        require_meter(profiled(run.recipe, run.folder.parent / "why", "--precisions=float32", "--work=forward"))
    for line in steps:
        assert line["joules"] == line["joules_cpu"] == pytest.approx(100 * line["seconds"], rel=0.02, abs=0.05)


def test_train_logs_no_joules_where_no_meter_exists(work, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_POWERCAP", str(tmp_path / "none"))
    monkeypatch.setenv("LIMBECK_POWER_EVENTS", str(tmp_path / "none"))
    run = work.train("unmetered", train__steps="4 steps")
    assert not any("joules" in name for line in run.lines for name in line)


def gpu_with_a_meter(counters: Path) -> dict[str, str]:
    """The emulated device, and a stand-in for NVML that counts in that folder."""
    counters.mkdir()
    (counters / "0").write_text("5000\n")
    return {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_STAND_IN_NVML": str(counters),
            "LIMBECK_NVML": str(build_folder() / "tests" / "stand_in_nvml.so")}  # fmt: skip


@only_where_built
def test_a_gpus_rows_work_where_model_and_data_are_placed_together(work, tmp_path):
    recipe = work.recipe("gpu", **ALONE, data__validation=None)
    environment = gpu_with_a_meter(tmp_path / "nvml") | {"LIMBECK_REQUIRE_GPU": "1"}
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
    recipe = work.recipe("cpu", **ALONE, data__validation=None)
    counters = tmp_path / "nvml"
    environment = gpu_with_a_meter(counters)
    report = profiled(recipe, tmp_path / "run", "--devices=cpu", "--precisions=float32", "--work=forward", **environment)
    assert {meter["device"] for meter in report["meters"]} == {"cpu"}
    assert list(row_of(report)["energy"]["by_device"]) == ["cpu"]
    assert not (counters / "readings").exists()


@only_where_built
@pytest.mark.parametrize("device, student", [("cpu", "student"), ("cuda", "student"), ("cuda", "experts")])
def test_check_refuses_every_precision_that_the_device_has_not_and_no_other(work, tmp_path, device, student):
    """What check says on meta is what a forward on the device meets."""
    folder = student_of_experts(work) if student == "experts" else work.folder / student
    recipe = work.recipe("matrix", **ALONE, data__validation=None, student__model=folder)
    formats = [line.split()[0] for line in run_program("list", "quantizers").stdout.splitlines() if line.strip()]
    formats = [name for name in formats if name.startswith(("int", "nf"))]
    assert "int4-sym-g32-dynamic" in formats
    if student == "experts":  # whose products of codes are the CPU's
        formats = [name for name in formats if "dynamic" in name or name in ("int8", "nf4")]
    environment = {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_REQUIRE_GPU": "1"}
    dtypes = ("float32", "bfloat16")
    names = [f"{name}+{dtype}" for i, name in enumerate(formats) for dtype in (dtypes if "dynamic" in name else dtypes[i % 2 :][:1])]
    report = profiled(recipe, tmp_path / "run", f"--devices={device}", f"--precisions={','.join(names)}", "--work=forward",
                      "--profile.energy=off", "--profile.measured=1", "--profile.trials=1", **environment)  # fmt: skip
    for row in report["rows"]:
        name, dtype = row["precision"].split("+")
        done = run_program("check", recipe, f"--student.quantize={name}", f"--student.dtype={dtype}", f"--device={device}",
                           env=os.environ | environment)  # fmt: skip
        assert (done.returncode != 0) == bool(row["refused"]), (row["precision"], row["refused"], done.stderr)
        if row["refused"]:
            assert done.returncode == 2 and row["refused"] in done.stderr and "set device = cpu" in row["refused"]
