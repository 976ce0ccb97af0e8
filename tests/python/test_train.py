"""`limbeck train` and `eval` as a user runs them: against a plain PyTorch loop, against themselves, and end to end."""

from __future__ import annotations

import functools
import json
import statistics
from pathlib import Path

import pytest
import torch
import transformers
from limbeck_runner import Limbeck, run_program
from safetensors.torch import load_file

import token_rows
import torch_distiller
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Work, llama, saved

@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("train"), limbeck)


@functools.lru_cache(maxsize=None)
def torch_loop(work: Work, student_seed: int = 2, accumulate: int = 1, steps: int = 50) -> torch_distiller.Trajectory:
    batches = token_rows.padded_batches(work.documents, ROWS, LENGTH)
    updates = [[batches[(i * accumulate + k) % len(batches)] for k in range(accumulate)] for i in range(steps)]
    settings = torch_distiller.Settings(
        learning_rate=1e-3, total_steps=steps, warmup_steps=5, weight_decay=0.01, temperature=2.0
    )
    return torch_distiller.distil(llama(32, 2, seed=student_seed), work.teacher, updates, settings)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_float32_trajectory_equals_the_plain_torch_loop(work, accumulate):
    wanted = torch_loop(work, accumulate=accumulate)
    run = work.train(f"float32-{accumulate}", train__accumulate=accumulate)
    for name, series in (("loss", wanted.loss), ("kd", wanted.kd), ("ce", wanted.ce)):
        got = run.series(name)
        assert len(got) == 50
        worst = max(abs(a - b) / abs(b) for a, b in zip(got, series))
        print(f"accumulate {accumulate}, {name}: worst relative difference {worst:.2e}")
        assert worst < 1e-4, (name, worst)
    assert run.series("targets") == wanted.targets
    assert run.series("grad_norm") == pytest.approx(wanted.gradient_norm, rel=1e-3)
    assert run.series("loss")[-1] < 0.9 * run.series("loss")[0]


def mixed(model: transformers.PreTrainedModel, batch: dict) -> list[torch.Tensor]:
    """What the attention of every layer gives."""
    found: list[torch.Tensor] = []
    hooks = [layer.self_attn.register_forward_hook(lambda module, given, result: found.append(result[0])) for layer in model.model.layers]
    torch_distiller.logits_of(model, batch)
    for hook in hooks:
        hook.remove()
    return found


def test_what_mixers_give_is_matched_as_a_plain_torch_loop_does(work):
    """A student of two layers by the first and the third of a teacher of four, and nothing else: its head learns nothing."""
    teacher, student, steps = llama(32, 4, seed=7), llama(32, 2, seed=2), 20
    keys = {"teacher__model": saved(teacher, work.folder / "mixing"), "objective__alpha": 0, "objective__ce_weight": 0, "objective__mixer_weight": 0.5,
            "objective__hidden_projector": "none", "train__steps": f"{steps} steps"}  # fmt: skip
    run = work.train("mixers", **keys)
    settings = torch_distiller.Settings(learning_rate=1e-3, total_steps=steps, warmup_steps=5, weight_decay=0.01)
    optimizer, wanted = torch_distiller.make_optimizer(student, settings), {"mixer.0": [], "mixer.1": []}
    for step, batch in zip(range(steps), token_rows.padded_batches(work.documents, ROWS, LENGTH)):
        for group in optimizer.param_groups:
            group["lr"] = torch_distiller.learning_rate(step, settings)
        with torch.no_grad():
            theirs = mixed(teacher, batch)
        counted = torch.nn.functional.pad(batch["labels"][:, 1:] != torch_distiller.IGNORED, (0, 1))
        terms = [(ours - theirs[2 * i]).square().mean(-1)[counted].mean() for i, ours in enumerate(mixed(student, batch))]
        optimizer.zero_grad(set_to_none=True)
        (0.5 * sum(terms) / 2).backward()
        for parameter in student.parameters():  # decayed alone where no term reaches it
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        for i, term in enumerate(terms):
            wanted[f"mixer.{i}"].append(float(term.detach()))
    for name, series in wanted.items():
        worst = max(abs(a - b) / b for a, b in zip(run.series(name), series, strict=True))
        print(f"{name}: from {series[0]:.4f} to {series[-1]:.4f}, worst relative difference {worst:.2e}")
        assert worst < 1e-4 and series[-1] < series[0]
    kept = load_file(run.folder / "final" / "model.safetensors")
    for name, parameter in student.state_dict().items():
        assert (kept[name] - parameter).abs().max() <= 1e-4, name
    half = {"student__dtype": "bfloat16", "teacher__dtype": "float16", "objective__hidden_projector": "linear"}
    assert work.train("mixers-half", **keys | half).series("mixer.1")[-1] > 0


def test_bfloat16_with_float32_masters_stays_within_the_spread_of_seeds(work):
    finals = [statistics.mean(torch_loop(work, student_seed=seed).loss[-5:]) for seed in (2, 3, 4)]
    spread = max(finals) - min(finals)
    run = work.train("bfloat16", student__dtype="bfloat16", teacher__dtype="bfloat16")
    difference = abs(statistics.mean(run.series("loss")[-5:]) - finals[0])
    print(f"bfloat16 differs by {difference:.5f}; three seeds of PyTorch spread over {spread:.5f}")
    assert difference < spread


def test_float16_student_with_loss_scaling_reaches_the_loss_of_float32(work):
    steps = {"train__steps": "300 steps", "data__shuffle": "yes"}
    wide, half = work.train("wide", **steps), work.train("half", student__dtype="float16", **steps)
    a, b = statistics.mean(wide.series("loss")[-20:]), statistics.mean(half.series("loss")[-20:])
    print(f"300 steps: float32 {a:.4f}, float16 {b:.4f}; loss scale at the end {half.series('loss_scale')[-1]}")
    assert b == pytest.approx(a, rel=0.02)
    assert a < wide.series("loss")[0]
    assert min(half.series("loss_scale")) >= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(work, threads):
    runs = [
        work.train(f"bits-{threads}-{i}", threads=threads, train__steps="100 steps", data__shuffle="yes", data__packing="packed",
                   student__dtype="bfloat16", eval__every=40)
        for i in range(2)
    ]  # fmt: skip
    one, other = (Outcome.of(run.folder) for run in runs)
    assert one.differences(other) == [] and len(one.lines) == 103


def test_float16_teacher_and_float32_student_train_evaluate_and_export(work):
    """The report's pair: it died at its first evaluation, outside of autocast."""
    big = saved(llama(64, 3, seed=9), work.folder / "teacher-half", torch.float16)
    run = work.train("s2", teacher__model=big, teacher__dtype="float16", student__dtype="float32", projector__kind="logit",
                     eval__every=20)  # fmt: skip
    contract = json.loads((run.folder / "contract.json").read_text())
    places = {cast["place"] for cast in contract["casts"]}
    assert any(place.startswith("projector.logit") for place in places), places
    projector = next(m for m in contract["modules"] if m["module"].startswith("projector.logit"))
    assert projector["storage"] == "float16"
    assert run.series("projector_ce")[-1] < run.series("projector_ce")[0]
    assert len(run.series("loss", "eval")) == 3

    exported = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "final")
    assert exported.dtype == torch.float32
    batch = token_rows.padded_batches(token_rows.random_documents(4, 6, LENGTH, VOCABULARY, seed=8), 4, LENGTH)[0]
    theirs = torch_distiller.logits_of(exported, batch)
    ours = work.limbeck.forward(run.folder / "final", {k: batch[k] for k in ("input_ids", "attention_mask")})["logits"]
    kept = batch["attention_mask"].bool()
    assert (ours - theirs)[kept].abs().max() < 2e-5 * theirs[kept].abs().max()

    out = work.folder / "s2-eval.json"
    work.limbeck.run("eval", str(run.recipe), "--checkpoint", str(run.folder / "final"), "--json", str(out))
    again = json.loads(out.read_text())["result"]
    last = [line for line in run.lines if line["phase"] == "eval"][-1]
    for name in ("loss", "kd", "ce", "projector_ce", "perplexity"):
        assert again[name] == pytest.approx(last[name], rel=1e-6), name
    kept = load_file(run.folder / "final" / "projectors.safetensors")
    assert {name: tensor.dtype for name, tensor in kept.items()} == {
        "projector.logit.weight": torch.float16, "projector.logit.bias": torch.float16
    }  # fmt: skip


def test_evaluation_of_a_saved_run_repeats_the_numbers_of_training(work):
    run = work.train("again", student__dtype="bfloat16")
    out = work.folder / "again-eval.json"
    work.limbeck.run("eval", str(run.recipe), "--student.dtype=bfloat16", "--checkpoint", str(run.folder / "final"),
                     "--progress=0.98", "--json", str(out))  # fmt: skip
    again = json.loads(out.read_text())["result"]
    last = [line for line in run.lines if line["phase"] == "eval"][-1]
    for name in ("loss", "kd", "ce", "perplexity", "teacher_perplexity", "kl", "top1_agreement", "top5_overlap"):
        assert again[name] == last[name], name


@pytest.mark.parametrize("checkpointing", ["no", "yes"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"student__dtype": "bfloat16", "teacher__dtype": "bfloat16"},
        {"student__dtype": "float16", "projector__kind": "logit"},
        {"train__accumulate": 3, "objective__layer_weight": 0.5},
    ],
    ids=["float32", "bfloat16", "float16-projector", "accumulate-layers"],
)
def test_memory_plan_is_within_ten_percent_of_the_measured_peak(work, keys, checkpointing, request):
    large = work.folder / "large"
    if not large.exists():
        saved(llama(256, 6, seed=1, vocabulary=2048), large)
        saved(llama(128, 6, seed=2, vocabulary=2048), work.folder / "large-student")
        documents = token_rows.random_documents(80, 100, 127, 2048, seed=7)
        token_rows.write(work.folder / "large-data", documents, 2048)
    name = f"memory-{request.node.callspec.id}"
    run = work.train(name, teacher__model=large, student__model=work.folder / "large-student",
                     data__train=work.folder / "large-data", data__validation=None, data__sequence_length=128,
                     data__batch_size=4, train__steps="2 steps", train__checkpoint_activations=checkpointing, **keys)  # fmt: skip
    planned, measured = run.result["planned_peak_bytes"], run.result["peak_bytes"]
    print(f"{name}: planned {planned / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB, ratio {planned / measured:.3f}")
    assert planned == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_plan_names_the_copy_that_checkpoints_need_beside_the_peak(work, asynchronous):
    keys = {"train__steps": "3 steps", "checkpoint__async": asynchronous}
    without = work.train(f"without-copy-{asynchronous}", checkpoint__keep=0, **keys).result
    run = work.train(f"with-copy-{asynchronous}", checkpoint__every=1, **keys).result
    assert without["planned_checkpoint_copy_bytes"] == 0
    more = run["peak_bytes"] - without["peak_bytes"]
    print(f"planned {run['planned_checkpoint_copy_bytes']} bytes for the copy, measured {more}")
    assert more == pytest.approx(run["planned_checkpoint_copy_bytes"], rel=0.02)


def refused(work: Work, recipe: Path, *flags: str, code: int) -> str:
    done = run_program("train", recipe, *flags, "--quiet")
    assert done.returncode == code, (done.returncode, done.stderr)
    return done.stderr


def test_without_its_teacher_a_recipe_trains_as_one_that_names_none(work):
    """teacher.kind = none is how a distilled student is compared with the same one trained alone."""
    keys = {"objective__alpha": 0, "train__steps": "4 steps"}
    unnamed = work.train("unnamed-teacher", teacher__model=None, **keys)
    put_aside = work.train("teacher-put-aside", teacher__kind="none", **keys)
    assert put_aside.series("loss") == unnamed.series("loss")
    assert put_aside.result["planned_peak_bytes"] == unnamed.result["planned_peak_bytes"]
    message = refused(work, put_aside.recipe, "--objective.alpha=0.5", "--run", str(work.folder / "none"), code=2)
    assert "compares with a teacher, and the recipe has none" in message


def test_a_folder_that_holds_a_run_is_not_written_over(work):
    run = work.train("once", train__steps="1 steps", checkpoint__keep=0)
    message = refused(work, run.recipe, "--run", str(run.folder), code=2)
    assert "holds a run already" in message and str(run.folder) in message


def test_without_a_run_folder_the_message_says_what_to_type(work):
    assert "--run" in refused(work, work.recipe("norun"), code=2)


def test_padded_heads_agree_and_other_tokenizers_are_refused(work):
    other = saved(llama(64, 3, seed=4, vocabulary=VOCABULARY + 45), work.folder / "teacher-padded")
    run = work.train("padded-head", teacher__model=other, train__steps="5 steps")
    assert all(value >= 0 for value in run.series("kd"))
    small = saved(llama(64, 3, seed=4, vocabulary=VOCABULARY - 100), work.folder / "teacher-small")
    message = refused(work, work.recipe("small", teacher__model=small), "--run", str(work.folder / "run-x"), code=2)
    assert "vocabulary" in message
