"""tools/gpu_check without a GPU: its dry run, its file while it runs, sections that fail and hang, and what it refuses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limbeck_runner import REPOSITORY, build_folder

TOOLS = REPOSITORY / "tools"
sys.path.insert(0, str(TOOLS))
import gpu_check_rows as kept  # noqa: E402
from gpu_check_rows import Row  # noqa: E402

HAS_DEVICE = (build_folder() / "fake_cuda" / "liblimbeck_cuda.so").exists()


class Watched:
    """A run, and every state in which its file was seen meanwhile: a state that is no JSON is an error."""

    def __init__(self, out: Path, *arguments, timeout: float = 240, **environment: str):
        command = [sys.executable, TOOLS / "gpu_check", "--out", out, "--build", build_folder(), *arguments]
        self.states, self.seen, self.out = [], None, out
        with open(out.with_suffix(".txt"), "w+") as said:
            child = subprocess.Popen([str(word) for word in command], env=os.environ | environment, stdout=said, stderr=subprocess.STDOUT)
            try:
                began = time.monotonic()
                while child.poll() is None:
                    assert time.monotonic() < began + timeout, f"gpu_check still runs after {timeout} s: {self.look()}"
                    self.look()
                    time.sleep(0.01)
            finally:
                child.kill() if child.poll() is None else None
                child.wait()
            said.seek(0)
            self.code, self.said = child.returncode, said.read()
        self.seconds = time.monotonic() - began
        print(self.said[-6000:])

    def look(self) -> list[dict]:
        file = self.out / "gpu_check.json"
        seen = file.stat().st_mtime_ns if file.exists() else None
        if seen != self.seen:
            self.states.append(json.loads(file.read_text()))
            self.seen = seen
        return self.states[-1:]

    @property
    def result(self) -> dict:
        return json.loads((self.out / "gpu_check.json").read_text())

    @property
    def rows(self) -> list[dict]:
        return self.result["rows"]

    def row(self, name: str) -> dict:
        return next(row for row in self.rows if row["name"] == name)


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> Watched:
    if not HAS_DEVICE:
        pytest.skip("built without the fake CUDA device")
    return Watched(tmp_path_factory.mktemp("gpu_check") / "dry", "--dry-run")


def test_a_dry_run_passes_and_its_file_is_whole_after_every_row(dry):
    print(f"{len(dry.rows)} rows in {dry.seconds:.0f} s, {len(dry.states)} states of the file seen")
    assert dry.code == 0 and dry.result["finished"] and dry.result["dry"]
    counts = [len(state["rows"]) for state in dry.states]
    assert counts == sorted(counts) and len(set(counts)) > 20
    assert not any(state["finished"] for state in dry.states if len(state["rows"]) < len(dry.rows))


def test_nothing_dry_looks_measured(dry):
    assert all(row["dry"] for row in dry.rows)
    assert [row for row in dry.rows if row["outcome"] == kept.MEASURED or row["value"] is not None or row["peers"] or row["roofline"]] == []
    assert {row["device"] for row in dry.rows} == {"emulated device", "CPU", "CPU, tiny sizes"}
    table = (dry.out / "gpu_check.md").read_text()
    assert table in dry.said and "nothing here was measured on a GPU" in table
    assert all(f"| {feature} | never |" in table for feature in kept.FEATURES)
    lines = [line for line in table.splitlines() if line.startswith(("| machine", "| correctness", "| operators", "| end_to_end"))]
    assert len(lines) == len(dry.rows) and all("(dry)" in line for line in lines)


def test_every_section_does_its_work(dry):
    done = {(row["section"], row["feature"]) for row in dry.rows if row["outcome"] == kept.PASSED}
    wanted = {kept.FULL, kept.PACKED, kept.LORA, kept.NF4, kept.EXPERTS, kept.FLOAT16, kept.BFLOAT16, kept.SAME_BITS, kept.RESUME,
              kept.GRAPHS, kept.FLASH_3, kept.OPERATORS}  # fmt: skip
    assert {feature for section, feature in done if section == "correctness"} == wanted
    operators = [row for row in dry.rows if row["section"] == "operators"]
    assert len(operators) >= 12 and {row["outcome"] for row in operators} == {kept.PASSED}
    assert "twice the same bits" in dry.row("bfloat16 by FlashAttention 3")["note"]
    assert "the CPU's attention in the place of both" in dry.row("attention by FlashAttention 3")["note"]
    assert dry.row("bin/limbeck")["outcome"] == dry.row("limbeck starts")["outcome"] == kept.PASSED
    assert dry.row("tiny: first loss as transformers'")["outcome"] == kept.PASSED
    assert dry.row("tiny: with CUDA graphs")["outcome"] == kept.PASSED
    assert "1 host waits" in dry.row("tiny: launches and host waits of an update")["note"]


GOOD = """
def rows(place):
    for number in range(30):
        yield place.row(f"number {number}", "passed")
"""
FAILING = """
def rows(place):
    yield place.row("before", "passed")
    place.say("the planted fault")
    raise RuntimeError("planted")
"""
HANGING = """
import signal, subprocess, sys, time
def rows(place):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("what it prints is no row")
    yield place.row("child", "passed", str(child.pid))
    place.say("sleeping")
    time.sleep(600)
"""
LATE = """
import subprocess
def rows(place):
    try:
        place.run(["sh", "-c", "sleep 600 & echo $! >&2; sleep 600"], timeout=1)
    except subprocess.TimeoutExpired:
        yield place.row("late", "passed")
"""
WRONG = 'def rows(place):\n    yield place.row("a sum", "failed", "2 + 2 = 5")\n'


def planted(tmp_path, timeout=60, **sections) -> Watched:
    flags = []
    for name, text in sections.items():
        (tmp_path / f"{name}.py").write_text(text)
        flags += ["--section", tmp_path / f"{name}.py"]
    return Watched(tmp_path / "out", "--dry-run", "--seconds=4", *flags, timeout=timeout)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_what_fails_and_what_hangs_is_a_row_and_the_rest_goes_on(tmp_path):
    run = planted(tmp_path, failing=FAILING, hanging=HANGING, good=GOOD)
    assert run.code == 1 and run.result["finished"] and run.seconds < 30
    assert [row["outcome"] for row in run.rows] == ["passed", "failed", "passed", "ran over", *["passed"] * 30]
    failed, over = (row for row in run.rows if row["outcome"] in kept.BAD)
    assert failed["section"] == "failing" and "exit 1" in failed["note"] and "planted" in failed["note"] and "the planted fault" in failed["note"]
    assert over["section"] == "hanging" and "killed at its limit of 4 s during sleeping" in over["note"] and over["at_second"] < 10
    assert not is_running(int(run.row("child")["note"]))
    assert "what it prints is no row" in (run.out / "hanging.log").read_text()
    assert "| hanging | the section itself | ran over (dry) |" in (run.out / "gpu_check.md").read_text()


def test_a_program_that_runs_over_is_ended_with_its_children(tmp_path):
    run = planted(tmp_path, late=LATE)
    assert run.code == 0 and run.rows[0]["name"] == "late" and run.rows[0]["at_second"] < 3


def test_one_wrong_row_is_exit_code_1(tmp_path):
    run = planted(tmp_path, wrong=WRONG)
    assert run.code == 1 and [row["outcome"] for row in run.rows] == ["failed"]


def test_nothing_shown_is_exit_code_1(tmp_path):
    assert planted(tmp_path, empty="def rows(place):\n    yield from ()\n").code == 1


def gpu_check(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOLS / "gpu_check", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          env=os.environ | environment)  # fmt: skip


@pytest.mark.parametrize("arguments, said", [
    (["--dry-run", "--section", "speed"], "--section speed: wanted one of machine, correctness, operators, end_to_end"),
    (["--dry-run", "--section", "machine", "--section", "machine"], "a section comes twice"),
    (["--dry-run", "--seconds=0"], "--seconds 0: wanted more than 0"),
    (["--dry-run", "--build", "/nowhere"], "/nowhere/bin/limbeck: not there; build it"),
    (["--dry-run", "--flash-attention-3", "/nowhere.so"], "--flash-attention-3 /nowhere.so: no such file; name flash_attn_3/_C.so"),
    (["--join", "/nowhere.json"], "/nowhere.json: no results of tools/gpu_check"),
])  # fmt: skip
def test_refusals(arguments, said):
    done = gpu_check(*arguments)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_a_gpu_it_says_so(tmp_path):
    done = gpu_check("--out", tmp_path / "out", PATH=str(tmp_path))
    assert done.returncode == 2 and "nvidia-smi" in done.stderr and "--dry-run" in done.stderr
    assert not (tmp_path / "out").exists()


def results(file: Path, rows: list[Row], **about) -> Path:
    kept.Results(file, {"date": "2027-01-02", "card": "NVIDIA H200", "driver": "1", "dry": False} | about)  # as at the start
    written = kept.Results(file, {"date": "2027-01-02", "card": "NVIDIA H200", "driver": "1", "dry": False} | about)
    for row in rows:
        written.add(row)
    return file


def test_several_calls_are_joined(tmp_path):
    first = results(tmp_path / "1.json", [Row("correctness", "full", "passed", feature=kept.FULL, device="NVIDIA H200"),
                                          Row("correctness", "twice", "failed", "differ: a | b", feature=kept.SAME_BITS)])  # fmt: skip
    second = results(tmp_path / "2.json", [Row("operators", "rotary", "measured", feature=kept.PYTHON_OPERATORS, value=0.1234, unit="ms",
                                               peers={"PyTorch": 0.5}, roofline=0.876, peak_mib=64)])  # fmt: skip
    done = gpu_check("--join", first, second)
    assert done.returncode == 1
    assert "tools/gpu_check, 2027-01-02, NVIDIA H200, driver 1." in done.stdout
    assert "| operators | rotary | measured | 0.123 ms | PyTorch 0.5 | 88 % | 64 |" in done.stdout
    assert f"| {kept.FULL} | 2027-01-02, NVIDIA H200 |" in done.stdout
    assert f"| {kept.SAME_BITS} | **failed**: twice, 2027-01-02, NVIDIA H200 |" in done.stdout
    assert f"| {kept.LORA} | never |" in done.stdout and "differ: a / b" in done.stdout
    done = gpu_check("--join", first, results(tmp_path / "3.json", [], card="NVIDIA H100 80GB HBM3"))
    assert done.returncode == 2 and "join the calls of one machine" in done.stderr


def test_the_features_are_those_of_readmes_table():
    table = (REPOSITORY / "README.md").read_text().split("| feature | run on a GPU", 1)[1].split("\n\n", 1)[0]
    named = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert [feature for feature in kept.FEATURES if feature not in named] == []
