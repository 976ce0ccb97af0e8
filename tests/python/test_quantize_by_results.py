"""Budgets of limbeck quantize that go by what other commands measured: milliseconds of a profile, the KL of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from limbeck_runner import Limbeck, LimbeckError
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


def test_what_a_sweep_did_not_try_is_named(case, sweep, tmp_path):
    with pytest.raises(LimbeckError, match=r"has no KL of layers\.0\.self_attn\.q_proj in float16 \(not tried\)"):
        case.run(tmp_path / "none", budget="4x", sweep=sweep[0])
    with pytest.raises(LimbeckError, match="--sweep and --predict-by both say what a budget goes by"):
        case.run(tmp_path / "none", budget="4x", sweep=sweep[0], predict_by="kl")
