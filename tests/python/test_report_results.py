"""Pages of sweeps, profiles and of quality against cost: they say what the results hold, and draw nothing that was not measured."""

import copy
import json
import re

import pytest
import report_examples as examples
import warm_python
from limbeck_runner import REPOSITORY
from test_report import Page, training_lines, write_run

TOOLS = {"sweep": examples.sweep, "profile": examples.profile, "budgets": examples.curve}


def tool(name, *arguments):
    return warm_python.completed([REPOSITORY / "tools" / f"{name}.py", *arguments], timeout=60)


def written(folder, name, result, wrapped=False):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"command": name, "result": result} if wrapped else result))
    return path


def page_of(folder, name, result, wrapped=False):
    done = tool(f"report_{name}", written(folder, name, result, wrapped))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / f"{name}.html")
    text = (folder / f"{name}.html").read_text()
    return Page(text), text


def figure(text, label):
    return re.search(rf'<svg[^>]*aria-label="{re.escape(label)}[^"]*"[^>]*>.*?</svg>', text, re.DOTALL).group(0)


def labels(text):
    return re.findall(r'<svg[^>]*aria-label="([^"]+)"', text)


def titles(text):
    return re.findall(r"<title>([^<]*)</title>", text)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_sweep_is_what_was_measured(tmp_path, wrapped):
    sweep = examples.sweep()
    page, text = page_of(tmp_path, "sweep", sweep, wrapped)
    assert page.row("as it is")[:2] == ["as it is", "61.00 %"]
    assert page.row("bfloat16") == ["bfloat16", "60.81 %", "0.19 pp [-0.11, 0.49]", "0.001 [0.0005, 0.002]", "31.5 s", "45.5 MB", "measured"]
    assert page.row("combined")[1:3] == ["60.67 %", "0.33 pp [0.03, 0.63]"]
    rows = [row for row in page.rows if row and row[0] == "layers.2.mlp.up_proj" and row[1] == "int8"]
    wanted = next(one for one in sweep["candidates"] if (one["module"], one["format"]) == ("layers.2.mlp.up_proj", "int8"))
    assert len(rows) == 1 and rows[0][4] == f"{wanted['drop']:.2f} pp [{wanted['low']:.2f}, {wanted['high']:.2f}]" and rows[0][-1] == "measured"
    assert rows[0][8:10] == ["0.8 ms of 1.1 ms", "74.5 KB of 147 KB"]
    listed = [row for row in page.rows if row and len(row) == 12 and row[0].startswith("layers.")]
    assert len(listed) == len(sweep["candidates"])
    said = "".join(page.texts)
    assert "mcnemar: p = 0.0625 on 2101 rows" in said and "it is not called safe" in said
    assert "student.layers.0.self_attn.q_proj float16" in said and "44 %" in said and "22 %" in said
    assert "Candidates are measured on 2101 rows, which choose; whole models on 2101 others, which chose nothing." in said


def test_predicted_and_measured_drop_stand_side_by_side(tmp_path):
    _, text = page_of(tmp_path, "sweep", examples.sweep())
    drawn = titles(figure(text, "drop, predicted and measured"))
    assert drawn == ["the sum of their own drops: 0.62 pp, 95 % from -0.70 pp to 2.10 pp",
                     "measured together on the rows that chose: 0.21 pp, 95 % from -0.10 pp to 0.50 pp",
                     "measured together: 0.33 pp, 95 % from 0.03 pp to 0.63 pp"]  # fmt: skip


def test_what_failed_is_drawn_apart_and_has_no_drop(tmp_path):
    sweep = examples.sweep()
    page, text = page_of(tmp_path, "sweep", sweep)
    for module, format_name, status in (("layers.1.mlp.down_proj.planted", "float16", "overflowed"), ("layers.2.mlp.torn", "int8", "failed")):
        svg = figure(text, f"drop by module, {format_name}")
        assert not [title for title in titles(svg) if module in title]
        dots, crosses = re.findall(r'<circle class="dot[^>]*cy="([0-9.]+)"', svg), re.findall(r'class="bad" d="M[0-9]+,([0-9.]+)', svg)
        assert len(crosses) == 1 and float(crosses[0]) > max(map(float, dots))
        assert f">{status}</text>" in svg and len(dots) == 16
        [row] = [row for row in page.rows if row and row[0] == module]
        assert row[3:8] == ["–"] * 5 and row[8] == "– of 1.1 ms" and row[10] == "–" and row[-1].startswith(f"{status}: ")
        for name in ("drop against bytes saved", "drop against time saved"):
            assert not [title for title in titles(figure(text, name)) if module in title]
    [planted] = [row for row in page.rows if row and row[0] == "layers.1.mlp.down_proj.planted, float16"]
    assert planted[1] == f"overflowed: {examples.OVERFLOW}"
    assert "<b>no</b>" not in text and "the product was refused: <b>no</b> & more" in "".join(page.texts)
    # Even one that carries numbers: its status decides.
    for one in sweep["candidates"]:
        if one["status"] == "failed":
            one.update(drop=0.0, low=0.0, high=0.0, quality=0.61)
    [torn] = [row for row in page_of(tmp_path / "zeros", "sweep", sweep)[0].rows if row and row[0] == "layers.2.mlp.torn"]
    assert not [cell for cell in torn if "0.00" in cell]


def test_a_sweep_of_a_decoder_without_a_combined_model(tmp_path):
    sweep = examples.sweep() | {"kind": "decoder", "quality": "perplexity", "combined": None}
    sweep["baseline"]["quality"] = 21.25
    page, text = page_of(tmp_path, "sweep", sweep)
    assert page.row("as it is")[1] == "21.25" and page.row("bfloat16")[2] == "0.19 % [-0.11, 0.49]"
    assert "No candidate was selected" in text
    sweep["candidates"][0] |= {"drop": 0.0012, "low": -0.0004, "high": 0.0031}
    row = page_of(tmp_path / "small", "sweep", sweep)[0].row(sweep["candidates"][0]["module"])
    assert row[4] == "0.0012 % [-0.0004, 0.0031]"


def test_all_of_a_sweep_may_have_failed(tmp_path):
    sweep = examples.sweep()
    sweep["candidates"] = [one for one in sweep["candidates"] if one["status"] != "measured"]
    page, text = page_of(tmp_path, "sweep", sweep)
    assert "drop against bytes saved" not in text and len(re.findall('class="bad" d=', text)) == 2


def test_a_long_sweep_draws_the_worst_and_lists_all(tmp_path):
    page, text = page_of(tmp_path, "sweep", examples.sweep(layers=12))
    assert "drop by module, int8 (the worst 16 of 84)" in labels(text)
    assert len([row for row in page.rows if row and len(row) == 12 and row[0].startswith("layers.")]) == 2 * 84 + 2


def test_a_profile_says_what_was_measured(tmp_path):
    page, text = page_of(tmp_path, "profile", examples.profile(joules=True))
    assert [row for row in page.rows if row and row[0] == "bfloat16"] == [
        ["bfloat16", "cpu", "95 ms", "93.1 ms", "114 ms", "5.7 ms", "168.4", "21,558", "412 of 2500"],
        ["bfloat16", "cpu", "45.5 MB", "45.5 MB", "91 MB", "182 MB", "accuracy 60.80 %", "0.598", "12.5 W", "8.25 J (package-0 6.6 J, dram 1.65 J)"]]  # fmt: skip
    assert [row for row in page.rows if row and row[:3] == ["int8", "cpu", "training"]][0][3].startswith("int8 weights are frozen")
    assert "float32 on cpu: 290 ms, p50 and p95 from 284.2 ms to 348 ms" in titles(figure(text, "latency, forward"))
    assert "energy, forward" in labels(text) and "energy, training" in labels(text)
    assert {"accuracy against latency over latency"} <= set(labels(text))
    said = "".join(page.texts)
    assert "A pass reads 16 rows of data.validation, 1890 tokens without padding." in said
    assert "time was up before all of them were made (profile.most_seconds)" in said
    assert page.row("temperature") == ["temperature", "51 °C"]
    [module] = [row for row in page.rows if row and row[0] == "layers.0.mlp.up_proj"][:1]
    assert module[3:9] == ["9.667", "3.3 %", "160.5", "76.0 %", "memory", "0.7167 J"]


def test_energy_that_no_meter_measured_is_said_in_words(tmp_path):
    page, text = page_of(tmp_path, "profile", examples.profile())
    measured = [row for row in page.rows if row and len(row) == 10 and row[1] == "cpu"]
    assert len(measured) == 4 and all(row[8:] == ["–", "not measured"] for row in measured)
    assert f"Energy was not measured: {examples.NO_METER}." in "".join(page.texts)
    assert not [label for label in labels(text) if label.startswith("energy")] and "0 J" not in text
    assert page.row("temperature")[1] == "not known: no sensor that can be read"
    assert page.row("NVML") == ["NVML", "cuda", "does not: libnvidia-ml.so.1 is not there"]


def test_one_row_without_a_meter_stands_apart_from_those_with(tmp_path):
    profile = examples.profile(joules=True)
    profile["rows"][1]["energy"] |= {"joules": None, "reason": "the counter was reset"}
    _, text = page_of(tmp_path, "profile", profile)
    svg = figure(text, "energy, forward")
    assert len(titles(svg)) == 2 and not [title for title in titles(svg) if "bfloat16" in title]
    assert ">not measured</text>" in svg and len(re.findall('class="bad"', svg)) == 1
    profile["rows"][2]["energy"] |= {"joules": None, "reason": "another"}
    page, _ = page_of(tmp_path / "two", "profile", profile)
    assert [row[9] for row in page.rows if row and row[1:2] == ["cpu"] and len(row) == 10][1:3] == ["not measured: the counter was reset",
                                                                                                    "not measured: another"]  # fmt: skip


def test_a_module_that_took_less_than_the_idle_machine_is_noise_and_no_fault(tmp_path):
    """A whole at the idle machine's own power is divided among modules: parts of next to nothing, on either side of it."""
    profile = examples.profile(joules=True)
    profile["rows"][0]["modules"][0]["joules"] = -0.0125
    page, _ = page_of(tmp_path, "profile", profile)
    name = profile["rows"][0]["modules"][0]["module"]
    assert [row[8] for row in page.rows if row and len(row) == 9 and row[0] == name][0] == "-0.0125 J"


def pareto(folder, *results):
    paths = [written(folder / str(number), name, result) for number, (name, result) in enumerate(results)]
    done = tool("report_pareto", *paths, "--output", folder / "pareto.html")
    assert done.returncode == 0, done.stderr
    text = (folder / "pareto.html").read_text()
    return Page(text), text


def test_quality_stands_against_bytes_time_and_energy_on_one_chart(tmp_path):
    page, text = pareto(tmp_path, ("sweep", examples.sweep()), ("profile", examples.profile(joules=True)), ("budgets", examples.curve()))
    one = figure(text, "accuracy against all costs")
    drawn = titles(one)
    assert {title.rpartition(", ")[2].partition(":")[0] for title in drawn} == {"bytes", "milliseconds a row", "joules a row"}
    # bfloat16: 45500000 of 90871344 bytes, 95 of 290 ms, 8.25 of 21.5 J
    assert "bfloat16 on cpu (1/profile), bytes: 60.80 % at 0.5007x" in drawn
    assert "bfloat16 on cpu (1/profile), milliseconds a row: 60.80 % at 0.3276x" in drawn
    assert "bfloat16 on cpu (1/profile), joules a row: 60.80 % at 0.3837x" in drawn
    assert {"accuracy against bytes over bytes", "accuracy against milliseconds a row over milliseconds a row", "accuracy against joules a row over joules a row",
            "perplexity against bytes over bytes"} <= set(labels(text))  # fmt: skip
    assert "perplexity against joules a row over joules a row" not in labels(text)
    [row] = [row for row in page.rows if row and row[1:3] == ["bfloat16 on cpu", "1/profile"]]
    assert row[3:8] == ["60.80 %", "–", "45.5 MB", "5.938 ms", "0.5156 J"]
    assert [row for row in page.rows if row and row[1] == "float16"] == []  # it overflowed: there is no such model
    assert "Joules a row: not of as it is (0/sweep)" in "".join(page.texts)


def test_the_front_is_what_nothing_beats(tmp_path):
    page, text = pareto(tmp_path, ("profile", examples.profile(joules=True)))
    fronts = {row[1]: row[-1] for row in page.rows if row and len(row) == 9 and row[2] == "0/profile"}
    # int8 is the smallest, and slower than bfloat16 at less quality
    assert fronts == {"float32 on cpu": "bytes, milliseconds a row, joules a row", "bfloat16 on cpu": "bytes, milliseconds a row, joules a row",
                      "int8 on cpu": "bytes"}  # fmt: skip
    assert len(re.findall('<circle class="run', figure(text, "accuracy against bytes"))) == 3
    assert len(re.findall('<circle class="run', figure(text, "accuracy against joules"))) == 2


def test_times_and_joules_of_two_files_are_on_no_front_together(tmp_path):
    """A sweep's time is that of its evaluation, a profile's that of whole passes: neither beats the other. Bytes are bytes."""
    sweep, profile = examples.sweep(), examples.profile(joules=True)
    alone, _ = pareto(tmp_path / "alone", ("profile", profile))
    timed = [sweep["baseline"], sweep["combined"], *sweep["whole_models"]]
    for model in timed:
        model["seconds"] = model["seconds"] and model["seconds"] / 1000
        model["bytes"] = model["bytes"] and model["bytes"] // 2
        model["quality"] = model["quality"] and 0.99
    page, text = pareto(tmp_path / "both", ("sweep", sweep), ("profile", profile))

    def fronts(of, source):
        return {row[1]: row[-1].split(", ") for row in of.rows if row and len(row) == 9 and row[2] == source}

    before, after = fronts(alone, "profile") or fronts(alone, "0/profile"), fronts(page, "1/profile")
    assert {name: [one for one in costs if one not in ("bytes", "–")] for name, costs in before.items()} == {
        name: [one for one in costs if one != "–"] for name, costs in after.items()}  # fmt: skip
    assert any("milliseconds a row" in costs for costs in after.values()) and any("joules a row" in costs for costs in after.values())
    assert any("milliseconds a row" in costs and "bytes" in costs for costs in fronts(page, "0/sweep").values())
    said = "".join(page.texts)
    assert "Bytes compare between files. Milliseconds and joules do not" in said and "each file has a front of its own" in said
    # Nor does a line join them where all costs are on one chart.
    lines = re.findall('<path class="run thin s1" d="([^"]+)"', figure(text, "accuracy against all costs"))
    on_one = [sum("milliseconds a row" in costs for costs in forms.values()) for forms in (fronts(page, "0/sweep"), after)]
    assert sorted(line.count(",") for line in lines) == sorted(marks for marks in on_one if marks > 1) and max(on_one) > 1


def test_the_front_of_shares_is_that_of_what_is_drawn(tmp_path):
    """Of two machines each has its front: a tenth of the one's time is no less than a third of the other's."""
    quick, slow = examples.profile(), examples.profile()
    for row in slow["rows"]:
        if row["latency_ms"]:
            row["latency_ms"] = {key: 10 * value for key, value in row["latency_ms"].items()}
    slow["rows"][1]["latency_ms"]["mean"] = 290.0  # bfloat16: a tenth of 2900, where the quick one's takes a third
    for row in slow["rows"]:
        if row["latency_ms"]:
            row["rows_per_second"] = 16000 / row["latency_ms"]["mean"]
    _, text = pareto(tmp_path, ("profile", quick), ("profile", slow))
    rings = re.findall('<circle class="dot s1"[^>]*><title>([^<:]+):[^<]*</title></circle>(<circle class="run)?', figure(text, "accuracy against all costs"))
    assert {name for name, ring in rings if ring} == {f"{form} on cpu ({at}/profile), milliseconds a row" for form in ("float32", "bfloat16") for at in (0, 1)}


def test_a_counter_that_did_not_move_was_measured(tmp_path):
    profile = examples.profile(joules=True)
    profile["rows"][1]["energy"]["joules"] = 0.0
    page, _ = pareto(tmp_path, ("profile", profile))
    assert "Joules a row: not of bfloat16 on cpu (0/profile): was measured as 0." in "".join(page.texts)


def test_qualities_compare_where_they_are_of_the_same_rows_and_the_page_says_whether(tmp_path):
    same = "All are measured on the same rows: rows 2102 to 4202 of 4202 (padded, 128 tokens) of data 1-720-8f4e363a."
    page, _ = pareto(tmp_path / "same", ("sweep", examples.sweep()), ("profile", examples.profile()))
    assert same in "".join(page.texts)
    other = examples.profile()
    for row in other["rows"]:
        if row["quality"]:
            row["quality"]["measured_on"] = examples.rows(0, 2101)
    page, _ = pareto(tmp_path / "other", ("sweep", examples.sweep()), ("profile", other))
    said = "".join(page.texts)
    assert "Not measured on the same rows" in said and "1/profile: rows 1 to 2101 of 4202" in said and same not in said
    silent = examples.sweep()
    del silent["measured_on"]
    page, _ = pareto(tmp_path / "silent", ("sweep", silent))
    assert "On which rows this was measured is not said." in "".join(page.texts)


def test_of_a_perplexity_less_is_better(tmp_path):
    page, _ = pareto(tmp_path, ("budgets", examples.curve()))
    assert [row[-1] for row in page.rows if row and len(row) == 9 and row[2] == "0/budgets" or row[2:3] == ["budgets"]] == ["bytes"] * 4
    losses = examples.profile()
    for row in losses["rows"]:
        row["quality"] = row["quality"] and row["quality"] | {"name": "loss", "value": 1 - row["quality"]["value"]}
    page, _ = pareto(tmp_path / "loss", ("profile", losses))  # what `profile` says of a model with no other measure
    assert {row[1]: row[-1] for row in page.rows if row and len(row) == 9 and row[2] == "0/profile"}["int8 on cpu"] == "bytes"
    page, _ = pareto(tmp_path / "encoder", ("budgets", examples.curve(encoder=True)))
    assert [row[3] for row in page.rows if row and len(row) == 9 and row[1] == "in floats"] == ["0"]


def test_energy_without_a_meter_has_no_mark_and_a_reason(tmp_path):
    page, text = pareto(tmp_path, ("profile", examples.profile()))
    assert not [title for title in titles(text) if "joules" in title] and not [label for label in labels(text) if "joules" in label]
    assert f"Joules a row: of no form of the model: {examples.NO_METER}." in "".join(page.texts)
    assert [row[7] for row in page.rows if row and len(row) == 9 and row[2] == "0/profile"] == ["–"] * 3


def test_one_page_of_a_run_and_all_results(tmp_path):
    run = write_run(tmp_path / "run", training_lines(8.0))
    written(run, "sweep", examples.sweep())
    profiled = written(tmp_path / "profiled", "profile", examples.profile())
    budgets = written(tmp_path, "curve", examples.curve(), wrapped=True)
    done = tool("report", run, profiled, budgets, "--output", tmp_path / "all.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "all.html").read_text()
    heads = re.findall("<h2>([^<]+)</h2>", text)
    assert heads == ["Evaluation", "Curves", "Speed and memory", "Dtypes, devices, memory", "Recipes", "Quality against cost",
                     "Sweep: run/sweep", "Profile: profiled/profile", "Budgets: curve"]  # fmt: skip
    Page(text)
    alone = tool("report", profiled.parent)
    assert alone.returncode == 0 and alone.stdout.strip() == str(tmp_path / "profiled" / "profile.html")
    before = profiled.read_text()
    refused = tool("report", profiled, "--output", profiled)
    assert refused.returncode == 2 and "which is read" in refused.stderr and profiled.read_text() == before


@pytest.mark.parametrize("name", TOOLS)
def test_pages_load_nothing_and_run_nothing(tmp_path, name):
    nasty = '<script>alert("1")</script>'
    def poisoned(value):
        if isinstance(value, dict):
            return {key: poisoned(one) for key, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return nasty + value if isinstance(value, str) and value not in ("measured", "forward", "accuracy", "") else value
    page, text = page_of(tmp_path, name, poisoned(TOOLS[name]()))
    assert page.loads == [] and "<script" not in text and "http" not in text and "url(" not in text
    assert nasty in "".join(page.texts)


BREAKS = [
    ("sweep", lambda r: r.pop("baseline"), "baseline"), ("sweep", lambda r: r["candidates"][0].update(drop="x"), "drop is no number"),
    ("sweep", lambda r: r["candidates"].append(3), "candidates is no list of objects"), ("sweep", lambda r: r.update(rows=None), "rows is no number"),
    ("sweep", lambda r: r["candidates"][0].update(bytes=-5), "bytes is negative"), ("sweep", lambda r: r["combined"].update(rules=[1]), "rules"),
    ("profile", lambda r: r.update(rows=[]), "rows are none"), ("profile", lambda r: r["rows"][0].update(latency_ms=[1]), "latency_ms is no object"),
    ("profile", lambda r: r["rows"][0]["energy"].update(joules=-1), "joules is negative"),
    ("profile", lambda r: r["rows"][0]["latency_ms"].update(mean=1e300), "mean is no number that can be drawn"),
    ("budgets", lambda r: r.update(curve=[]), "the points of the curve are none"),
]  # fmt: skip


@pytest.mark.parametrize("name, change, said", BREAKS)
def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path, name, change, said):
    result = copy.deepcopy(TOOLS[name]())
    change(result)
    path = written(tmp_path, name, result)
    done = tool(f"report_{name}", path)
    assert done.returncode == 3 and said in done.stderr and str(path) in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert f"limbeck {'quantize' if name == 'budgets' else name}" in done.stderr and not list(tmp_path.glob("*.html"))


def test_what_is_no_result_is_refused(tmp_path):
    other = written(tmp_path, "other", {"perplexity": 3})
    for name in ("report", "report_pareto"):
        done = tool(name, other)
        assert done.returncode == 3 and "neither a sweep, a profile nor a curve of budgets" in done.stderr and done.stderr.count("\n") == 1
    unmeasured = examples.profile()
    for row in unmeasured["rows"]:
        row["quality"] = None
    done = tool("report_pareto", written(tmp_path, "unlabelled", unmeasured))
    assert done.returncode == 3 and "no form of a model with a measured quality" in done.stderr
    assert tool("report_pareto", tmp_path / "gone.json").returncode == 2
