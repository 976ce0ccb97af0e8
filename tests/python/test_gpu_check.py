"""tools/gpu_check where there is no GPU: its dry run, and sections that fail or hang."""

import json
import os
import subprocess
import sys
import time

import pytest
from limbeck_runner import REPOSITORY, build_folder

sys.path.insert(0, str(REPOSITORY / "tools"))
from gpu_check_report import Report, run_section  # noqa: E402

FAKE = build_folder() / "fake_cuda" / "liblimbeck_cuda.so"


def gpu_check(*arguments, **environment):
    return subprocess.run([sys.executable, str(REPOSITORY / "tools" / "gpu_check"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=400, env=dict(os.environ) | environment)  # fmt: skip


def rows_of(folder):
    return json.loads((folder / "gpu_check.json").read_text())["rows"]


@pytest.mark.skipif(not FAKE.exists(), reason="built without the fake CUDA device")
def test_the_dry_run_goes_through_everything(tmp_path):
    done = gpu_check("--dry-run", "--out", tmp_path)
    rows = rows_of(tmp_path)
    bad = [row for row in rows if row["state"] not in ("passed", "dry", "seen", "skipped")]
    assert done.returncode == 0 and bad == [], done.stdout + done.stderr
    passed = [row["name"] for row in rows if row["section"] == "correctness" and row["state"] == "passed"]
    assert "AttentionCuda.FlashMatchesFloat64AndGivesTheSameBitsAgain" in passed
    assert "test_a_resumed_run_ends_with_the_same_bits" in passed
    assert sum(name.startswith("test_training_is_the_cpus[") for name in passed) >= 7
    operators = [row for row in rows if row["section"] == "operators" and "peer" not in row["name"]]
    assert len(operators) == 9
    # What did not run on a GPU is no measurement, in the file as in the table.
    assert all(row["state"] == "dry" and not any("ms" in key.split("_") for key in row) for row in operators)
    table = (tmp_path / "gpu_check.md").read_text()
    assert "emulated device: nothing is measured" in table and "measured |" not in table
    assert table.count("\n| ") == len(rows) + 1


def python(code):
    return [sys.executable, "-S", "-c", code]


def test_a_section_that_fails_is_a_row_and_the_rest_runs(tmp_path):
    report = Report(tmp_path, dict(date="today", dry_run=True))
    run_section(report, "bad", python("print('{\"name\": \"a\", \"state\": \"passed\"}'); print('why'); raise SystemExit(3)"), 60, dict(os.environ))
    run_section(report, "good", python("print('{\"name\": \"b\", \"state\": \"passed\", \"ms\": 1.5}')"), 60, dict(os.environ))
    assert rows_of(tmp_path) == report.rows == [
        dict(section="bad", name="a", state="passed"),
        dict(section="bad", name="the section", state="failed", exit=3, said="why"),
        dict(section="good", name="b", state="passed", ms=1.5),
    ]  # fmt: skip
    assert report.failed() == report.rows[1:2]


def test_a_section_that_hangs_is_killed_with_its_children(tmp_path):
    report = Report(tmp_path, dict(date="today", dry_run=True))
    code = ("import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
            "print('{\"name\": \"child\", \"state\": \"seen\", \"process\": %d}' % child.pid, flush=True); time.sleep(600)")  # fmt: skip
    began = time.monotonic()
    run_section(report, "hangs", python(code), 2, dict(os.environ))
    assert time.monotonic() - began < 30
    assert report.rows[1]["state"] == "over time" and report.failed() == report.rows[1:]
    # Killed and reaped, or a zombie of whoever reaps here.
    process = report.rows[0]["process"]
    for _ in range(100):
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives")


def test_the_file_is_whole_after_every_row(tmp_path):
    report = Report(tmp_path, dict(date="today", dry_run=False))
    for i in range(5):
        report.add("s", f"row {i}", "passed")
        assert len(rows_of(tmp_path)) == i + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu_check.json"]


@pytest.mark.parametrize("flags, environment, wanted", [
    (("--section", "speed"), {}, "machine"), (("--seconds", "0"), {}, "wanted more than 0"), ((), {"LIMBECK_BUILD": "/nowhere"}, "build first"),
])  # fmt: skip
def test_what_cannot_run_is_refused(tmp_path, flags, environment, wanted):
    done = gpu_check("--dry-run", "--out", tmp_path, *flags, **environment)
    assert done.returncode == 2 and wanted in done.stderr and "Traceback" not in done.stderr
