"""train.cuda_graphs = on, on the fake device of tests/fake_cuda/ (graph.h): the bits of a run without, and the refusals.

A value that the host told the first step and not the later ones, or a wait of the host in forward or backward, ends these
runs with other bits or with an error.
"""

from __future__ import annotations

import os

import pytest
import token_rows
from fake_cuda_work import FOLDER, Counters, only_where_built, resnet_bk_student, student_of_experts
from limbeck_runner import run_program
from test_fake_cuda import plan_of, trained
from training_work import VOCABULARY, Outcome, Work

pytestmark = only_where_built

STEPS = 10


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("cuda_graphs"), limbeck)


# Rows are as wide as their longest document, so that two shapes take turns, and documents differ in length and number. With
# each kind the replays: all but the first micro-batch of each shape, number of documents or loss scale.
KINDS = {
    "distilled": (dict(train__accumulate=2), 18),
    "lora": (dict(adapter__kind="lora", adapter__rank=4, adapter__dropout=0.1, train__checkpoint_activations="yes"), 8),
    "bfloat16-packed": (dict(student__dtype="bfloat16", teacher__dtype="bfloat16", data__packing="packed"), 8),
    "npt": (dict(adapter__kind="npt", adapter__rank=4), 8),
    "nf4-lora": (dict(student__quantize="nf4", teacher__quantize="int8", adapter__kind="lora", adapter__rank=4), 8),
    # Scales that overflow at first: updates are skipped, and each scale is recorded anew.
    "float16": (dict(student__dtype="float16", optim__loss_scale_start=2.0**24), 3),
    # How many tokens each expert has is new with each batch.
    "experts": (dict(student__model=student_of_experts), 8),
    "resnet-bk": (dict(student__model=lambda work: resnet_bk_student(work, "ResNetBKForCausalLM")), 8),
    "experts-lora": (dict(student__model=student_of_experts, student__dtype="bfloat16", data__packing="packed", adapter__kind="lora",
                          adapter__rank=4, adapter__target=r"experts\..*_proj|q_proj"), 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_has_the_bits_of_one_that_is_not(work, kind):
    keys, replays = KINDS[kind]
    keys = {key: value(work) if callable(value) else value for key, value in keys.items()}
    runs, counted = [], []
    for graphs in ("off", "on"):
        file = work.folder / "counters"
        run = trained(work, f"{kind}-{graphs}", "cuda", "--eval.batches=1", steps=STEPS, checkpoint__every=STEPS, data__prefetch=1,
                      train__cuda_graphs=graphs, environment={"LIMBECK_FAKE_CUDA_COUNTERS": str(file)}, **keys)  # fmt: skip
        runs.append(Outcome.of(run.folder))
        counted.append(Counters.of(file))
    off, on = counted
    print(f"{kind}: {on.graphs} replays; {off.operators + off.launches} operators and kernels without, {on.operators + on.launches} with")
    assert runs[0].differences(runs[1]) == []
    assert (off.graphs, on.graphs) == (0, replays)
    assert on.waits == off.waits and on.bytes == 0
    assert on.operators + on.launches < off.operators + off.launches
    # What graphs hold is planned as well; what the plan leaves out is batches, and what was counted in them.
    planned, took = plan_of(work, kind, run), run.result["peak_bytes"]
    print(f"{kind}: planned {planned}, took {took}: {planned / took:.3f}")
    assert took - 16 * 1024 <= planned <= took


def test_kinds_that_find_no_place_run_without_a_graph_and_the_run_says_so_once(work):
    """Rows of one document each: many widths, and none often."""
    token_rows.write(work.folder / "widths", token_rows.random_documents(60, 6, 96, VOCABULARY, seed=9), VOCABULARY)
    keys = dict(data__train=work.folder / "widths", data__batch_size=1, data__sequence_length=96, train__accumulate=2)
    file = work.folder / "counters"
    off = trained(work, "widths-off", "cuda", "--eval.batches=1", steps=15, checkpoint__every=15, **keys)
    recipe, run = work.recipe("widths-on", train__steps="15 steps", train__cuda_graphs="on", checkpoint__every=15, **keys), work.folder / "run-widths"
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER), "LIMBECK_FAKE_CUDA_COUNTERS": str(file)}
    done = run_program("train", recipe, "--run", run, "--device=cuda", "--threads=1", "--eval.batches=1", env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "run without a graph" in line]
    print(f"{Counters.of(file).graphs} replays of 30 micro-batches", *said, sep="\n")
    assert len(said) == 1 and "data.packing = packed" in said[0]
    assert Outcome.of(off.folder).differences(Outcome.of(run)) == []
    assert 4 < Counters.of(file).graphs < 30


REFUSED = {
    "the student is not on a GPU: set student.device = cuda": dict(student__device="cpu", teacher__device="cpu"),
    "weights of terms or the temperature change from step to step": dict(objective__temperature_end=1),
    "set objective.curriculum = none": dict(objective__curriculum="s2", objective__feature_weight=0, objective__layer_weight=0,
                                            objective__attention_weight=0, objective__contrastive_weight=0),
    "objective.feature_weight adds a term that is not recorded yet: set objective.feature_weight = 0": dict(objective__feature_weight=1),
    "objective.divergence = dskd": dict(objective__divergence="dskd"),
    "set parallel.reduce = fast": dict(parallel__reduce="tree"),
}  # fmt: skip


def refused(work: Work, *flags: str, **keys) -> str:
    keys = dict(student__device="cuda", teacher__device="cuda", train__cuda_graphs="on") | keys
    env = dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER)}
    done = run_program("check", work.recipe("refused", **keys), "--quiet", *flags, env=env, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_limit_of_memory_is_of_graphs_too(work):
    limit = "--parallel.memory_limit=0.0018"  # GiB: enough without graphs
    assert run_program("check", work.recipe("limited"), "--quiet", limit, "--device=cuda", env=dict(os.environ) | {"LD_LIBRARY_PATH": str(FOLDER)}, timeout=60).returncode == 0  # fmt: skip
    assert "or train.cuda_graphs = off" in refused(work, limit)


def test_check_refuses_in_words_what_cannot_be_recorded(work):
    said = {reason: refused(work, **keys) for reason, keys in REFUSED.items()}
    said["gradients of 2 ranks meet while backward runs"] = refused(work, "--parallel.world_size=2")
    for reason, text in said.items():
        print(text.strip())
        assert reason in " ".join(text.split()), reason
        assert "train.cuda_graphs = on" in text and "train.cuda_graphs = off" in text
