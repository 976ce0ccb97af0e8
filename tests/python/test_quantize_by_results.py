"""Budgets of limbeck quantize that go by what other commands measured: milliseconds of a profile, the KL of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm_python
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError, run_program
from test_quantize_policies import formats, weighs_as_said
from test_quantize_scores import LENGTH, Case

PACKED = ["int8", "int4-g32"]


class Measured(Case):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.recipe = folder / "own.ini"
        self.recipe.write_text(
            f"[student]\nmodel = {self.base}\ndtype = float32\n[teacher]\nkind = none\n[objective]\nalpha = 0\n"
            f"[data]\ntrain = {self.data}\nvalidation = {self.data}\nbatch_size = 4\nsequence_length = {LENGTH}\npacking = padded\n"
        )

    def said_by(self, command: str, *flags: str) -> tuple[Path, dict]:
        run = self.folder / command
        Limbeck().run(command, self.recipe, f"--run={run}", *flags)
        file = run / f"{command}.json"
        return file, json.loads(file.read_text())

    def mix(self, out: Path, **keys) -> dict:
        said = self.run(out, dtype="float32", formats=",".join(["float", *PACKED]), **keys)
        weighs_as_said(said, out)
        return said


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Measured:
    return Measured(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def profile(case) -> tuple[Path, dict]:
    names = ",".join(["float32", *(f"{name}+float32" for name in PACKED)])
    return case.said_by("profile", f"--precisions={names}", "--work=forward", "--profile.batch=4", "--profile.length=16",
                        "--profile.warmup=1", "--profile.measured=5", "--profile.trials=1", "--devices=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def sweep(case) -> tuple[Path, dict]:
    return case.said_by("sweep", f"--formats={','.join(PACKED)}")


def nanoseconds(report: dict, precision: str) -> tuple[int, dict[str, int]]:
    (row,) = [row for row in report["rows"] if row["precision"] == precision]
    modules = {one["module"].removeprefix("student."): round(one["ms"] * 1e6) for one in row["modules"]}
    return round(row["latency_ms"]["mean"] * 1e6), modules


def test_a_budget_of_milliseconds_goes_by_a_profile(case, profile, tmp_path):
    file, report = profile
    whole, floats = nanoseconds(report, "float32")
    by_format = {"float": floats} | {name: nanoseconds(report, f"{name}+float32")[1] for name in PACKED}
    first = case.mix(tmp_path / "any", budget="1000 ms", times=file)
    modules = [name.removeprefix("model.") for name in first["modules"]]
    rest = max(0, whole - sum(floats[name] for name in modules))

    def least_of(group: list[str]) -> int:
        return min(sum(times[name] for name in group) for times in by_format.values() if all(name in times for name in group))

    fused, groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")), {}
    for name in modules:
        parent, leaf = name.rpartition(".")[::2]
        key = next((parent + one[0] for one in fused if leaf in one), name)
        groups.setdefault(key, []).append(name)
    most, least = rest + sum(floats[name] for name in modules), rest + sum(map(least_of, groups.values()))
    for share in (0.1, 0.5):
        ms = (least + share * (most - least)) / 1e6 if most > least else least / 1e6
        said = case.mix(tmp_path / f"mix{share}", budget=f"{ms + 1e-5:.5f} ms", times=file)
        taken = rest + sum(by_format[form][name.removeprefix("model.")] for name, form in formats(said).items())
        assert said["budget"]["ns"] == taken <= said["budget"]["allowed_ns"]
    with pytest.raises(LimbeckError, match="the least that this model takes is") as refused:
        case.mix(tmp_path / "none", budget=f"{least / 2e6:.5f} ms", times=file)
    assert "or quicker --formats" in str(refused.value)


def test_times_are_wanted_and_wanted_of_these_floats(case, profile, tmp_path):
    with pytest.raises(LimbeckError, match="a budget of 3 ms goes by what was measured: limbeck profile"):
        case.mix(tmp_path / "none", budget="3 ms")
    with pytest.raises(LimbeckError, match="has no forward in float16, in which what is not packed is stored"):
        case.run(tmp_path / "none", budget="3 ms", times=profile[0])
    with pytest.raises(LimbeckError, match='--times is what a budget of milliseconds goes by: add --budget="3 ms"'):
        case.run(tmp_path / "none", quantize="int8", times=profile[0])


def test_a_budget_goes_by_the_kl_that_a_sweep_measured(case, sweep, tmp_path):
    file, report = sweep
    kl = {(one["module"], one["format"]): one["kl"] for one in report["candidates"]}
    said = case.mix(tmp_path / "mix", budget="3.2x", sweep=file, exchange_steps=0)
    chosen = formats(said)
    assert len(set(chosen.values())) > 1
    for name, entry in said["modules"].items():
        wanted = 0 if entry["format"] == "float" else kl[name.removeprefix("model."), entry["format"]]
        assert entry["predicted loss"] == pytest.approx(wanted, rel=1e-12), name


def test_sweep_profile_and_quantize_stand_on_one_page_of_the_same_rows(case, sweep, tmp_path):
    file, swept = sweep
    said = run_program("sweep", case.recipe, f"--run={file.parent}", f"--formats={','.join(PACKED)}")  # again, of what is there
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("the same rows: ")]
    same = "the same rows: --eval.skip=5 --eval.batches=5 in eval and profile, --calibration-rows=20 --held-out-rows=20 in quantize"
    assert line == same
    result = tmp_path / "profile.json"
    Limbeck(threads=2).run("profile", case.recipe, "--json", result, "--precisions=float32,int8+float32", "--work=forward", "--devices=cpu",
                           "--profile.warmup=0", "--profile.measured=1", "--profile.trials=1", "--profile.energy=off", "--eval.skip=5",
                           "--eval.batches=5")  # fmt: skip
    curve = case.run(tmp_path / "curve", dtype="float32", formats=",".join(["float", *PACKED]), budgets="3x,3.5x", sweep=file, exchange_steps=0,
                     calibration_rows=20, held_out_rows=20, output=None, scores=tmp_path / "curve.scores.jsonl")  # fmt: skip
    profiled = json.loads(result.read_text())["result"]["rows"]
    rows = swept["measured_on"]
    assert (rows["first"], rows["rows"], rows["of"]) == (20, 20, 40)
    assert curve["measured_on"] == rows and all(row["quality"]["measured_on"] == rows for row in profiled)
    floats = [swept["baseline"]["quality"], profiled[0]["quality"]["value"], curve["curve"][0]["measured"]["float_perplexity"]]
    assert floats == pytest.approx([floats[0]] * 3, rel=1e-5), "eval adds its losses in float32"
    page = tmp_path / "page.html"
    done = warm_python.completed([REPOSITORY / "tools" / "report_pareto.py", file, result, tmp_path / "curve.json", "--output", page], timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"All are measured on the same rows: rows 21 to 40 of 40 (padded, {LENGTH} tokens)" in page.read_text()


def test_what_a_sweep_did_not_try_is_named(case, sweep, tmp_path):
    with pytest.raises(LimbeckError, match=r"has no KL of layers\.0\.self_attn\.q_proj in float16 \(not tried\)"):
        case.run(tmp_path / "none", budget="4x", sweep=sweep[0])
    with pytest.raises(LimbeckError, match="--sweep and --predict-by both say what a budget goes by"):
        case.run(tmp_path / "none", budget="4x", sweep=sweep[0], predict_by="kl")
