"""Scores of limbeck quantize against float64, the mixes that follow from them, and what a folder measures."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path

import model_zoo
import pytest
import token_rows
import torch
import transformers
import warm_python
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError, build_folder
from safetensors.torch import load_file
from test_quantize_command import payload
from test_quantize_policies import formats, llama, weighs_as_said
from test_report import Page

LENGTH, ROWS, HELD_OUT, JUDGING, VOCABULARY = 24, 6, 5, 9, 101
MODULES = 2 * 7 + 2  # two layers, an embedding, a head
FORMATS = ["float", "int8", "int4-g32", "int4"]


class Case:
    def __init__(self, folder: Path, **options):
        self.folder, self.base = folder, llama(folder / "base", **options)
        self.documents = token_rows.random_documents(40, LENGTH // 2, LENGTH, VOCABULARY, seed=3)
        self.data = token_rows.write(folder / "data", self.documents, VOCABULARY)

    def flags(self, out: Path, **keys) -> list[str]:
        options = {"model": self.base, "data": self.data, "output": out, "json": f"{out}.json", "packing": "padded",
                   "sequence-length": LENGTH, "calibration-rows": ROWS, "held-out-rows": HELD_OUT,
                   "exchange-rows": JUDGING} | {
                       key.replace("_", "-"): value for key, value in keys.items()}  # fmt: skip
        return ["quantize", *(f"--{name}={value}" for name, value in options.items() if value is not None)]

    def run(self, out: Path, limbeck: Limbeck | None = None, **keys) -> dict:
        (limbeck or Limbeck(threads=2)).run(*self.flags(out, **keys))
        return json.loads(Path(f"{out}.json").read_text())["result"]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return Case(tmp_path_factory.mktemp("scores"))


def model(folder: Path, dtype: torch.dtype = torch.float64) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager").to(dtype)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers in each int32 along the last dimension, the lowest bits first, counted from the least code."""
    line = (words.long()[..., None] >> torch.arange(32) & 1).flatten(-2)
    line = line[..., : line.shape[-1] // bits * bits].unflatten(-1, (-1, bits))
    return (line << torch.arange(bits)).sum(-1) - 2 ** (bits - 1)


def weight_of(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """What a weight in compressed-tensors' pack-quantized layout stands for, in float64."""
    rows, columns = stored[f"{name}_shape"].tolist()
    words, scale = stored[f"{name}_packed"], stored[f"{name}_scale"].double()
    bits = words.shape[1] * 32 // columns
    codes = unpacked(words, bits)[:, :columns].double()
    if f"{name}_zero_point" in stored:
        zeros = unpacked(stored[f"{name}_zero_point"].T.contiguous(), bits).T[:rows].double()
        codes -= zeros.repeat_interleave(columns // scale.shape[1], 1)
    return codes * scale.repeat_interleave(columns // scale.shape[1], 1)


def stood_for(base: Path, folder: Path) -> transformers.PreTrainedModel:
    """The model that a folder of packed weights stands for, in float64."""
    stored, net = load_file(folder / "model.safetensors"), model(base)

    def plain(name: str) -> torch.Tensor:
        if name not in stored:
            return weight_of(stored, name)
        scale = stored[f"{name}_scale"].double() if stored[name].dtype == torch.int8 else 1
        return stored[name].double() * scale

    net.load_state_dict({name: plain(name) for name in net.state_dict() if name != "lm_head.weight" or not net.config.tie_word_embeddings}, strict=False)
    return net


def is_table(name: str) -> bool:
    return name == "embed_tokens"


def weighted(net) -> dict[str, torch.nn.Module]:
    """What a budget gives formats: linear modules, the embedding, the head; one that is tied is the embedding."""
    tied = net.config.tie_word_embeddings
    found = {name.removeprefix("model."): module for name, module in net.named_modules() if name.endswith(("_proj", "embed_tokens"))}
    return found if tied else found | {"lm_head": net.lm_head}


def linears(net) -> dict[str, torch.nn.Linear]:
    return {name: module for name, module in weighted(net).items() if name.endswith("_proj")}


def rows_of(case: Case, begin: int, count: int) -> list[torch.Tensor]:
    return [torch.tensor([ids]) for ids in case.documents[begin : begin + count]]


@pytest.fixture(scope="module")
def reference(case, tmp_path_factory):
    """By module, in float64: the score in each format, mean |gradient|, variance of outputs, mean |w|."""
    net, out = model(case.base), tmp_path_factory.mktemp("codes")
    stored = {"float": {name: module.weight.detach().half().double() for name, module in weighted(net).items()}}
    for form in FORMATS[1:]:
        rules = [f"--rule=model.{name} {form}" for name in weighted(net) if "proj" not in name and (form == "int8" or not is_table(name))]
        Limbeck().run("quantize", f"--model={case.base}", f"--output={out / form}", f"--quantize={form}", "--dtype=float16", *rules)
        stored[form] = {name: module.weight.detach() for name, module in weighted(stood_for(case.base, out / form)).items()}
    seen: dict[str, tuple] = {}
    for name, module in weighted(net).items():
        def keep(_, inputs, output, name=name):
            output.retain_grad()
            seen[name] = (inputs[0], output)
        module.register_forward_hook(keep)
    found = {name: {"losses": [0.0] * len(FORMATS), "dynamic": 0.0, "gradient": 0.0, "outputs": []} for name in weighted(net)}
    for ids in rows_of(case, 0, ROWS):
        net.zero_grad()
        logits = net(ids).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        for name, (x, y) in seen.items():
            weight = weighted(net)[name].weight
            for i, form in enumerate(FORMATS):
                error = stored[form][name] - weight.detach()
                change = error[x] if is_table(name) else x.detach() @ error.T
                found[name]["losses"][i] += 0.5 * float((change * y.grad).square().sum())
            if name.endswith("_proj"):
                scale = x.detach().abs().amax(-1, keepdim=True) / 127.5
                change = (x.detach() / scale).round().clamp(-128, 127) * scale @ stored["int8"][name].T - y.detach()
                found[name]["dynamic"] += 0.5 * float((change * y.grad).square().sum())
            found[name]["gradient"] += float(weight.grad.abs().mean()) / (ids.shape[1] - 1)
            found[name]["outputs"].append(y.detach().flatten())
    for name, entry in found.items():
        entry["variance"] = float(torch.cat(entry["outputs"]).var(unbiased=False))
        entry["stored"] = {form: weights[name] for form, weights in stored.items()}
        entry["weight"] = float(weighted(net)[name].weight.detach().abs().mean())
    return found


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_those_of_float64(case, reference, tmp_path):
    case.run(tmp_path / "out", budget="3x", exchange_steps=0)
    head, *rows = lines_of(tmp_path / "out.scores.jsonl")
    assert head["formats"] == FORMATS and [row["row"] for row in rows] == list(range(ROWS))
    assert head["modules"] == list(reference)
    for i, name in enumerate(head["modules"]):
        for j in range(2 if is_table(name) else len(FORMATS)):  # an embedding is float or int8
            ours = sum(row["modules"][i][4][j] for row in rows)
            # Float32 rounds the change of an output by about 1e-7 of the output, and float16's own is 2e-4 of it.
            assert ours == pytest.approx(reference[name]["losses"][j], rel=5e-3 if FORMATS[j] == "float" else 1e-4), (name, FORMATS[j])
        assert sum(row["modules"][i][0] for row in rows) == pytest.approx(reference[name]["gradient"], rel=1e-4), name


def test_inputs_that_a_format_rounds_are_in_its_score(case, reference, tmp_path):
    case.run(tmp_path / "out", budget="3x", exchange_steps=0, formats="float,int8,int8-dynamic")
    head, *rows = lines_of(tmp_path / "out.scores.jsonl")
    for i, name in enumerate(head["modules"]):
        if not name.endswith("_proj"):
            continue
        weights, both = (sum(row["modules"][i][4][j] for row in rows) for j in (1, 2))
        assert both == pytest.approx(reference[name]["dynamic"], rel=2e-2) and both > 1.5 * weights, name
    with pytest.raises(LimbeckError, match=r"int8-dynamic rounds the inputs .* take --predict-by=error"):
        case.run(tmp_path / "alone", budget="3x", formats="float,int8-dynamic", predict_by="kl")


def test_a_tied_embedding_has_the_score_of_both_its_uses(tmp_path):
    tied = Case(tmp_path, tie_word_embeddings=True)
    said = tied.run(tmp_path / "out", budget="3.9x", exchange_steps=0, formats="float,int8")
    weighs_as_said(said, tmp_path / "out")
    assert formats(said)["embed_tokens"] == "int8" and "lm_head" not in said["modules"]
    head, *rows = lines_of(tmp_path / "out.scores.jsonl")
    net, mix = model(tied.base), stood_for(tied.base, tmp_path / "out")
    error = (mix.model.embed_tokens.weight - net.model.embed_tokens.weight).detach()
    lookup = product = 0.0
    for ids in rows_of(tied, 0, ROWS):
        kept = net.model(ids, output_hidden_states=True)
        embedded, logits = kept.hidden_states[0], net.lm_head(kept.last_hidden_state)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        by_embedded, by_logits = torch.autograd.grad(loss, [embedded, logits])
        lookup += 0.5 * float((error[ids] * by_embedded).square().sum())
        product += 0.5 * float((kept.last_hidden_state.detach() @ error.T * by_logits).square().sum())
    ours = sum(row["modules"][head["modules"].index("embed_tokens")][4][1] for row in rows)
    assert ours == pytest.approx(lookup + product, rel=1e-4)
    assert min(lookup, product) > 1e-3 * ours  # each is seen


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL of what two models predict, over all targets of a row of ids."""
    p, q = (logits[0, :-1].log_softmax(-1) for logits in (p, q))
    return float((p.exp() * (p - q)).sum())


def test_a_module_alone_is_scored_by_the_kl_of_the_whole_model(case, reference, tmp_path):
    said = {by: case.run(tmp_path / by, budget="4x", exchange_steps=0, predict_by=by, scores=tmp_path / "scores.jsonl") for by in ("kl", "both")}
    net, wanted, rows = model(case.base), {}, rows_of(case, 0, ROWS)
    with torch.no_grad():
        floats = [net(ids).logits for ids in rows]
        for name, module in weighted(net).items():
            own = module.weight.data
            for form in FORMATS[: 2 if is_table(name) else None]:
                module.weight.data = reference[name]["stored"][form]
                wanted[name, form] = sum(divergence(p, net(ids).logits) for p, ids in zip(floats, rows, strict=True))
            module.weight.data = own
    lines = lines_of(tmp_path / "scores.jsonl")
    names, alone = lines[0]["modules"], [line for line in lines if "alone" in line]
    assert [(line["row"], line["alone"]) for line in alone] == [(row, i) for row in range(ROWS) for i in range(len(names))]
    found = {(name, form): sum(line["kl"][j] for line in alone if line["alone"] == i) for i, name in enumerate(names) for j, form in enumerate(FORMATS)}
    found = {key: kl for key, kl in found.items() if key in wanted}
    for (name, form), kl in wanted.items():
        # The floats' logits are rounded to float32, which of float16's own KL leaves two digits.
        assert found[name, form] == pytest.approx(kl, rel=0.1 if form == "float" else 1e-3), (name, form)
    targets = sum(ids.shape[1] - 1 for ids in rows)
    errors = {(name, form): reference[name]["losses"][j] for name, form in found for j in [FORMATS.index(form)]}
    scale = sum(found.values()) / sum(errors.values())
    for name, entry in said["kl"]["modules"].items():
        assert entry["predicted loss"] == pytest.approx(found[name, entry["format"]] / targets, rel=1e-12)
    for name, entry in said["both"]["modules"].items():
        mean = (found[name, entry["format"]] + scale * errors[name, entry["format"]]) / 2 / targets
        assert entry["predicted loss"] == pytest.approx(mean, rel=5e-3 if entry["format"] == "float" else 1e-3)
    for by in ("kl", "both"):
        weighs_as_said(said[by], tmp_path / by)
        for layer in range(2):
            for group in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
                assert len({form for name, form in formats(said[by]).items() if f"layers.{layer}." in name and name.split(".")[-1] in group}) == 1


def test_dynamic_is_the_formula_over_all_modules(case, reference, tmp_path):
    said = case.run(tmp_path / "out", policy="dynamic")
    weighs_as_said(said, tmp_path / "out")
    z = {}
    of_layers = {name: entry for name, entry in reference.items() if name.endswith("_proj")}
    for key, share in (("gradient", 0.5), ("variance", 0.3), ("weight", 0.2)):
        values = torch.tensor([entry[key] for entry in of_layers.values()], dtype=torch.float64)
        for name, value in zip(of_layers, (values - values.mean()) / values.std(unbiased=False), strict=True):
            z[name] = z.get(name, 0) + share * float(value)
    for name, entry in said["modules"].items():
        assert entry["importance"] == pytest.approx(z[name], abs=1e-4), name
    ranked = sorted(z, key=z.get)
    assert {name for name, form in formats(said).items() if form == "float"} == set(ranked[-2:])  # 20 % of 14
    assert {name for name, form in formats(said).items() if form == "int4"} == set(ranked[:5])  # 40 %


def test_what_was_written_is_measured_against_the_floats(case, tmp_path):
    said = case.run(tmp_path / "out", budget="4x")
    weighs_as_said(said, tmp_path / "out")
    assert said["bytes"] <= said["budget"]["allowed_bytes"] == said["float32_bytes"] // 4
    for group in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
        for layer in range(2):
            given = {form for name, form in formats(said).items() if f"layers.{layer}." in name and name.split(".")[-1] in group}
            assert len(given) == 1
    floats, mix = model(case.base), stood_for(case.base, tmp_path / "out")
    kl, losses, tokens = 0.0, [0.0, 0.0], 0
    with torch.no_grad():
        for ids in rows_of(case, ROWS, HELD_OUT):
            p, q = (net(ids).logits[0, :-1].log_softmax(-1) for net in (floats, mix))
            kl += divergence(floats(ids).logits, mix(ids).logits)
            losses = [loss - float(l.gather(1, ids[0, 1:, None]).sum()) for loss, l in zip(losses, (p, q), strict=True)]
            tokens += ids.shape[1] - 1
    measured = said["measured"]
    assert measured["targets"] == tokens and measured["rows"] == HELD_OUT
    assert measured["kl"] == pytest.approx(kl / tokens, rel=1e-3)
    assert measured["float_perplexity"] == pytest.approx(math.exp(losses[0] / tokens), rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(losses[1] / tokens), rel=1e-5)
    assert measured["kl_low"] <= measured["kl"] <= measured["kl_high"]
    assert said["exchange"]["kl_after"] <= said["exchange"]["kl_before"]


def test_one_file_answers_every_budget(case, tmp_path):
    scores, losses = tmp_path / "new" / "folder" / "scores.jsonl", []
    for i, budget in enumerate(["2.2x", "3x", "4x", "4.5x"]):
        said = case.run(tmp_path / f"out{i}", budget=budget, scores=scores, exchange_steps=0)
        assert said["calibration"]["rows_kept"] == (0 if i == 0 else ROWS)
        losses.append(said["budget"]["predicted_loss"])
        assert said["bytes"] <= said["budget"]["allowed_bytes"]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_a_curve_is_what_single_budgets_give_from_the_same_file(case, tmp_path):
    scores, out = tmp_path / "scores.jsonl", tmp_path / "curve"
    said = case.run(out, budgets="1,4x,6", output=None, scores=scores, exchange_steps=2)
    assert not out.exists() and [point["asked"] for point in said["curve"]] == ["4x", "6 bits"]
    (too_small,) = said["too_small"]
    assert too_small.startswith('--budget="1 bits" is ') and "the least that this model takes is" in too_small
    whole = scores.read_bytes()
    for point, budget in zip(said["curve"], ["4x", "6 bits"], strict=True):
        single = case.run(tmp_path / budget, budget=budget, scores=scores, exchange_steps=2)
        assert single["modules"] == point["modules"] and single["bytes"] == point["bytes"] == payload(tmp_path / budget)
        assert single["budget"]["predicted_loss"] == point["predicted_loss"] and single["estimate"] == point["estimate"]
        assert single["exchange"] == point["exchange"]
        # The folder's products are by codes, the curve's by what they stand for: float32 rounds both.
        assert single["measured"] == pytest.approx(point["measured"], rel=1e-3)
    assert scores.read_bytes() == whole  # nothing was measured again

    page = tmp_path / "page.html"
    warm_python.completed([REPOSITORY / "tools" / "report_budgets.py", f"{out}.json", "--output", page], code=0)
    shown = Page(page.read_text())
    assert shown.loads == []
    for point in said["curve"]:
        row = shown.row(point["asked"])
        assert row[1] == str(point["bytes"]) and row[5] == f"{point['measured']['kl']:.6f}"
    for module, entry in said["curve"][0]["modules"].items():
        assert module == shown.row(module)[0] and sorted(shown.row(module)[1:]) == sorted(
            point["modules"][module]["format"] for point in said["curve"])  # fmt: skip
        assert entry["format"] in FORMATS
    assert page.read_text().count('class="dot s0"') == 6 and too_small in shown.texts


WHOLE = {"budget": "4x", "exchange_steps": 6, "predict_by": "both"}


@pytest.fixture(scope="module")
def uninterrupted(case, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    case.run(out, limbeck=Limbeck(threads=1), **WHOLE)
    return out


def same_outcome(one: Path, other: Path) -> None:
    assert Path(f"{one}.scores.jsonl").read_bytes() == Path(f"{other}.scores.jsonl").read_bytes()
    ours, theirs = (load_file(out / "model.safetensors") for out in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_uninterrupted_run_measures_rows_and_mixes(uninterrupted):
    lines = lines_of(Path(f"{uninterrupted}.scores.jsonl"))[1:]
    kinds = [next(kind for kind in ("mix", "alone", "row") if kind in line) for line in lines]
    assert kinds == ["row"] * ROWS + ["alone"] * MODULES * ROWS + ["mix"] * 7 * JUDGING
    mixes = [line["mix"] for line in lines if "mix" in line]
    assert len(set(mixes)) == 7  # the solved one, and six tries
    assert [(line["mix"], line["row"]) for line in lines[(1 + MODULES) * ROWS :]] == [(mix, row) for mix in dict.fromkeys(mixes) for row in range(ROWS + HELD_OUT, ROWS + HELD_OUT + JUDGING)]


def test_exchanges_are_judged_on_rows_of_their_own_by_paired_differences(case, uninterrupted):
    said = json.loads(Path(f"{uninterrupted}.json").read_text())["result"]["exchange"]
    mixes: dict[str, list[dict]] = {}
    for line in lines_of(Path(f"{uninterrupted}.scores.jsonl")):
        mixes.setdefault(line.get("mix", "none"), []).append(line)
    (first, *tried), targets = [rows for mix, rows in mixes.items() if mix != "none"], 0
    for row, ids in zip(first, rows_of(case, ROWS + HELD_OUT, JUDGING), strict=True):
        assert row["targets"] == ids.shape[1] - 1
        targets += row["targets"]
    kl = [sum(row["kl"] for row in rows) / targets for rows in (first, *tried)]
    now = kl[0]
    assert said["rows"] == JUDGING and said["kl_before"] == pytest.approx(now) and len(said["tries"]) == 6
    for one, then in zip(said["tries"], kl[1:], strict=True):
        assert one["kl"] == pytest.approx(then) and one["change"] == pytest.approx(then - now, abs=1e-9)
        assert one["change_low"] <= one["change"] <= one["change_high"] and one["kept"] == (one["change_high"] < 0)
        now = then if one["kept"] else now
    assert said["kl_after"] == pytest.approx(now)


def test_too_few_rows_to_judge_exchanges_by_are_said(case, tmp_path):
    run = Limbeck().run(*case.flags(tmp_path / "out", budget="4x", calibration_rows=30))  # of 40
    assert "no exchange is tried: 5 rows are left to judge them by, wanted 8 behind 5 held-out ones" in run.stderr
    said = json.loads((tmp_path / "out.json").read_text())["result"]
    assert said["exchange"]["tries"] == [] and said["budget"]["predicted_loss"] == said["budget"]["predicted_loss_solved"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.55, 0.7, 0.8, 0.97, 0.999])
def test_cut_anywhere_it_goes_on_to_the_same_bits(case, uninterrupted, tmp_path, share):
    """What a killed process leaves: whole lines, and part of one. On one thread before and on two now."""
    whole = Path(f"{uninterrupted}.scores.jsonl").read_bytes()
    (tmp_path / "out.scores.jsonl").write_bytes(whole[: int(share * len(whole))])
    case.run(tmp_path / "out", **WHOLE)
    same_outcome(tmp_path / "out", uninterrupted)


def test_killed_while_it_measures_it_goes_on_to_the_same_bits(case, uninterrupted, tmp_path):
    out = tmp_path / "out"
    scores, flags = Path(f"{out}.scores.jsonl"), case.flags(out, **WHOLE)
    for lines in (2, 4, 12, 8 + 14 * ROWS):  # among rows, modules alone and mixes
        run = subprocess.Popen([build_folder() / "bin" / "limbeck", *flags, "--quiet"], stdin=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < until:
            if scores.exists() and scores.read_bytes().count(b"\n") >= lines:
                break
        run.kill()
        run.wait()
    case.run(out, **WHOLE)
    same_outcome(out, uninterrupted)


REFUSALS = [
    ({"budget": "4x", "data": None}, 2, "--budget goes by what is measured, and there is nothing to measure on"),
    ({"policy": "dynamic", "data": None}, 2, "--policy=dynamic goes by what is measured"),
    ({"policy": "dynamic", "budget": "4x"}, 2, "--budget and --policy=dynamic both decide"),
    ({"budget": "4"}, 2, "wanted what the model may weigh, everything counted"),
    ({"budgets": "4,5", "budget": "4x"}, 2, "--budgets shows what several cost and --budget writes one"),
    ({"budgets": "4,5", "data": None, "output": None}, 2, "--budgets goes by what is measured"),
    ({"budgets": "4,5x"}, 2, 'shows 2 without writing any: leave --output out, or write the chosen one by --budget="4 bits"'),
    ({"budgets": "4,4 bits", "output": None}, 2, "names 4 bits twice"),
    ({"budgets": "4,many", "output": None}, 2, '--budgets = "many": wanted what the model may weigh'),
    ({"budgets": "4,5", "output": None}, 2, "name their file by --scores"),
    ({"budgets": "4", "output": None, "rounding": "compensated"}, 2, "--budgets measures mixes that are rounded to nearest"),
    ({"budgets": "0.5,1", "output": None, "scores": "never.jsonl"}, 2, "the least that this model takes is"),
    ({"budget": "1 bits"}, 2, "the least that this model takes is"),
    ({"policy": "dynamic", "predict-by": "kl"}, 2, "--predict-by says what a budget goes by"),
    ({"budget": "4x", "formats": "float,int7"}, 2, '"int7" is no format'),
    ({"budget": "3.6 bits", "serve-by": "vllm"}, 2, "the least that this model takes is"),
    ({"budget": "4x", "formats": "float,int3", "serve-by": "vllm"}, 2, "--formats has int3, and vLLM serves codes of 8 and 4 bits alone"),
    ({"policy": "dynamic", "formats": "int8,int4"}, 2, "--policy=dynamic wants three"),
    ({"budget": "4x", "rule": "model.layers.9.** int8"}, 2, "matches no module of model"),
    ({"budget": "4x", "calibration-rows": 40}, 3, "wanted --calibration-rows=40 and at least one more"),
]


@pytest.mark.parametrize(("keys", "code", "message"), REFUSALS)
def test_refusals_come_before_anything_is_measured(case, tmp_path, keys, code, message):
    with pytest.raises(LimbeckError, match=f"exit {code}") as refused:
        Limbeck().run(*case.flags(tmp_path / "out", **keys))
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.scores.jsonl").exists()


def test_a_budget_that_4_bits_do_not_hold_is_met_with_fewer(case, tmp_path):
    """Formats of 3 and 2 bits are scored where something needs them, and where scores are gone on with that have them."""
    scores, keys = tmp_path / "scores.jsonl", {"exchange_steps": 0, "rounding": "compensated"}
    with pytest.raises(LimbeckError, match="the least that this model takes is"):
        Limbeck().run(*case.flags(tmp_path / "few", budget="4.2 bits", scores=scores, formats=",".join(FORMATS), **keys))
    few = case.run(tmp_path / "few", budget="4.2 bits", scores=scores, **keys)
    weighs_as_said(few, tmp_path / "few")
    assert few["bytes"] <= few["budget"]["allowed_bytes"] and {"int3", "int2"} & {form[:4] for form in formats(few).values()}
    assert all(entry["compensated"] < entry["nearest"] for entry in few["rounding"].values())
    measured = len(lines_of(scores))
    assert lines_of(scores)[0]["formats"] == [*FORMATS, "int3-g32", "int3", "int2-g32", "int2"]
    case.run(tmp_path / "more", budget="8 bits", scores=scores, exchange_steps=0)
    assert len(lines_of(scores)) == measured


def test_scores_of_another_model_data_or_formats_are_refused(case, uninterrupted, tmp_path):
    other = llama(tmp_path / "other", initializer_range=0.2)
    data = token_rows.write(tmp_path / "data", case.documents[::-1], VOCABULARY)
    for keys, what in (({"model": other}, "other model"), ({"data": data}, "other data"), ({"formats": "float,int8"}, "other formats"),
                       ({"dtype": "bfloat16"}, "other floats"), ({"sequence-length": 16}, "other data")):  # fmt: skip
        with pytest.raises(LimbeckError, match=f"(?s)exit 2: .*holds scores of {what}"):
            Limbeck().run(*case.flags(tmp_path / "out", budget="3x", scores=f"{uninterrupted}.scores.jsonl", **keys))
    assert not (tmp_path / "out").exists()


def test_a_damaged_line_is_refused_by_its_number(case, uninterrupted, tmp_path):
    for kind, number, changed, message in (("row", 3, ("targets", "target"), "is no line of scores"),
                                           ("alone", ROWS + 2, ('"alone":0', f'"alone":{MODULES}'), "has not a score for each module and format"),
                                           ("mix", (1 + MODULES) * ROWS + 2, ('"float_loss":', '"floats":'), "is no line of scores")):  # fmt: skip
        lines = Path(f"{uninterrupted}.scores.jsonl").read_text().splitlines()
        assert f'"{kind}":' in lines[number - 1] and changed[0] in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(*changed)
        (tmp_path / "scores.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(LimbeckError, match=f"(?s)exit 3: .*scores.jsonl:{number}: {message}"):
            Limbeck().run(*case.flags(tmp_path / "out", budget="4x", scores=tmp_path / "scores.jsonl"))


def test_weights_that_are_no_numbers_are_refused(case, tmp_path):
    net = transformers.AutoModelForCausalLM.from_pretrained(case.base)
    with torch.no_grad():
        net.model.layers[1].mlp.up_proj.weight[3, 5] = math.nan
    net.save_pretrained(tmp_path / "broken")
    with pytest.raises(LimbeckError, match="(?s)exit 4: .*up_proj"):
        Limbeck().run(*case.flags(tmp_path / "out", budget="4x", model=tmp_path / "broken"))
    with pytest.raises(LimbeckError, match="(?s)exit 4: .*layers.1.mlp.up_proj: its weight holds NaN or infinity"):
        Limbeck().run(*case.flags(tmp_path / "out", budget="4x", model=tmp_path / "broken"), "--allow-nonfinite")


def test_experts_without_tokens_are_named(tmp_path):
    base = model_zoo.write_model(model_zoo.BY_NAME["qwen3-moe"], tmp_path / "base")
    data = token_rows.write(tmp_path / "data", [[5, 5, 5], [5, 5, 5]], model_zoo.VOCABULARY)
    run = Limbeck().run("quantize", f"--model={base}", f"--data={data}", f"--output={tmp_path / 'out'}", "--budget=2x", "--packing=padded",
                        "--sequence-length=16", "--calibration-rows=1", "--formats=float,int8,int4-g32")  # fmt: skip
    assert "mlp.experts: experts" in run.stderr and "saw no token" in run.stderr


BERT = {"self_attn.q_proj": "attention.self.query", "self_attn.k_proj": "attention.self.key", "self_attn.v_proj": "attention.self.value",
        "self_attn.o_proj": "attention.output.dense", "mlp.up_proj": "intermediate.dense", "mlp.down_proj": "output.dense",
        "embed_tokens": "embeddings.word_embeddings", "embed_positions": "embeddings.position_embeddings",
        "embed_token_types": "embeddings.token_type_embeddings"}  # fmt: skip


def in_bert(path: str) -> str:
    if not path.startswith("layers."):
        return BERT[path]
    _, layer, name = path.split(".", 2)
    return f"encoder.layer.{layer}.{BERT[name]}"


def drawn_signs(row: int, count: int) -> torch.Tensor:
    """SplitMix64's finaliser of key + counter * golden ratio, as kernels/random/counter_bits.h has it."""

    def bits(key: int, counter: int) -> int:
        x = (key + counter * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    key = bits(0x51E0D1EC, row)
    return torch.tensor([1.0 if bits(key, i) & 1 else -1.0 for i in range(count)], dtype=torch.float64)


def test_an_encoder_is_scored_and_measured_by_its_pooled_states(case, tmp_path):
    family = model_zoo.BY_NAME["bert"]
    base = model_zoo.write_model(family, tmp_path / "base")
    documents = token_rows.random_documents(40, LENGTH // 2, LENGTH, model_zoo.VOCABULARY, seed=4)
    data = token_rows.write(tmp_path / "data", documents, model_zoo.VOCABULARY)
    said = case.run(tmp_path / "out", budget="3.2x", model=base, data=data, formats="float,int8", exchange_steps=2)
    weighs_as_said(said, tmp_path / "out")
    stored, net, mix = load_file(tmp_path / "out" / "model.safetensors"), *(model_zoo.load(family, base, torch.float64) for _ in range(2))
    seen, modules = {}, {path: net.get_submodule(in_bert(path)) for path in said["modules"]}
    assert "pooler" not in modules and sum(not path.startswith("layers.") for path in modules) == 3
    errors = {}
    for path, module in modules.items():
        module.register_forward_hook(lambda _, inputs, output, path=path: seen.__setitem__(path, (inputs[0], output)))
        name = f"{in_bert(path)}.weight"
        if said["modules"][path]["format"] == "float":
            continue
        weight = stored[name].double() * stored[f"{name}_scale"].double() if name in stored else weight_of(stored, name)
        errors[path] = weight - module.weight.detach()
        mix.get_submodule(in_bert(path)).weight.data = weight
    for name, parameter in mix.named_parameters():
        if name in stored and stored[name].dtype == torch.float16:
            parameter.data = stored[name].double()

    def direction(of, ids: list[int]) -> torch.Tensor:
        pooled = of(torch.tensor([ids])).last_hidden_state.mean(1)[0]
        return pooled / pooled.norm()

    assert len(errors) > 10
    losses = dict.fromkeys(errors, 0.0)
    for row, ids in enumerate(documents[:ROWS]):
        projected = (direction(net, ids) * drawn_signs(row, net.config.hidden_size)).sum()
        gradients = torch.autograd.grad(projected, [seen[path][1] for path in errors], retain_graph=True)
        for (path, error), gradient in zip(errors.items(), gradients, strict=True):
            x = seen[path][0]
            change = error[x] if path.startswith("embed") else x.detach() @ error.T
            losses[path] += 0.5 * float((change * gradient).square().sum())
    head, *rows = [line for line in lines_of(tmp_path / "out.scores.jsonl") if "mix" not in line]
    for path, wanted in losses.items():
        ours = sum(row["modules"][head["modules"].index(path)][4][1] for row in rows)
        assert ours == pytest.approx(wanted, rel=1e-3), path
    with torch.no_grad():
        turned = [1 - float(direction(net, ids) @ direction(mix, ids)) for ids in documents[ROWS : ROWS + HELD_OUT]]
    assert said["measured"]["turned"] == pytest.approx(sum(turned) / HELD_OUT, rel=1e-3) and said["measured"]["targets"] == HELD_OUT
    assert "perplexity" not in said["measured"]

    scores, out, page = tmp_path / "out.scores.jsonl", tmp_path / "curve", tmp_path / "page.html"
    curve = case.run(out, budgets="2.5x,3.2x", output=None, model=base, data=data, formats="float,int8", exchange_steps=2, scores=scores)["curve"]
    assert curve[1]["modules"] == said["modules"] and curve[1]["measured"]["turned"] == pytest.approx(said["measured"]["turned"], rel=1e-3)
    warm_python.completed([REPOSITORY / "tools" / "report_budgets.py", f"{out}.json", "--output", page], code=0)
    shown = Page(page.read_text())
    for point in curve:
        assert shown.row(point["asked"])[5] == f"{point['measured']['turned']:.6f}" and len(shown.row(point["asked"])) == 7
    assert "1 - cosine to floats" in shown.texts and "perplexity" not in shown.texts


def test_codes_of_an_encoder_are_compensated(case, tmp_path):
    base = model_zoo.write_model(model_zoo.BY_NAME["bert"], tmp_path / "base")
    said = {way: case.run(tmp_path / way, quantize="int4-g32", rule="model.**.down_proj int8", rounding=way, model=base) for way in ("nearest", "compensated")}
    assert said["compensated"]["measured"]["turned"] < 0.8 * said["nearest"]["measured"]["turned"]
    for module in said["compensated"]["rounding"].values():
        assert module["compensated"] <= module["nearest"]


def test_a_uniform_folder_is_measured_too(case, tmp_path):
    said = case.run(tmp_path / "out", quantize="int8")
    assert said["dtype"] == "float32" and 0 < said["measured"]["kl"] < 1e-2
    assert not (tmp_path / "out.scores.jsonl").exists()
    assert payload(tmp_path / "out") == said["bytes"]
