"""Adapters in `limbeck train`: against PEFT in a plain PyTorch loop, exported into PEFT, resumed, divided, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dropout_masks
import model_zoo
import parity_measures
import peft
import pytest
import torch
import torch_distiller
import transformers
from rank_processes import Ranks
from safetensors.torch import load_file, save_file
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Work, checkpoints, joined_state, newest_checkpoint, refused_before_anything_runs

import token_rows

STEPS = 30  # of a trajectory; bits and dtypes show sooner
KEYS = dict(adapter__kind="lora", adapter__rank=4, adapter__alpha=8, train__steps="15 steps")
TARGETS = ["q_proj", "v_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def work(tmp_path_factory, limbeck) -> Work:
    return Work(tmp_path_factory.mktemp("adapter-training"), limbeck)


RATE = 0.3


def peft_config(case: str) -> peft.PeftConfig:
    kind, *parts = case.split("-")
    targets = [*TARGETS, "lm_head"] if "head" in parts else TARGETS
    rate = RATE if "dropout" in parts else 0.0
    if kind == "ia3":
        return peft.IA3Config(target_modules=targets, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    more = dict(target_modules=[*targets, "embed_tokens"] if kind == "embedding" else targets)
    if kind == "experts":
        more = dict(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    return peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=rate, use_dora=kind == "dora", task_type="CAUSAL_LM", rank_pattern={"down_proj": 2},
                           init_lora_weights=False, **more)  # fmt: skip


def sparse_student(work: Work) -> Path:
    folder = work.folder / "sparse-student"
    if not folder.exists():
        torch.manual_seed(8)
        config = transformers.Qwen3MoeConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
            max_position_embeddings=128, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        transformers.Qwen3MoeForCausalLM(config).float().save_pretrained(folder)
    return folder


def keys_of(work: Work, kind: str) -> dict:
    """Of a recipe that trains this kind: "embedding" and "experts" are LoRA on those, "lora-dropout" is with dropout."""
    if kind.endswith("-dropout"):
        return keys_of(work, kind.removesuffix("-dropout")) | dict(adapter__dropout=RATE)
    if kind == "embedding":
        return dict(adapter__kind="lora", adapter__target="embed_tokens|q_proj")
    if kind == "experts":
        return dict(adapter__kind="lora", adapter__target=r"experts\..*_proj|q_proj", student__model=sparse_student(work))
    return dict(adapter__kind=kind)


def base_of(work: Work, kind: str) -> transformers.PreTrainedModel:
    folder = keys_of(work, kind).get("student__model", work.folder / "student")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()


def updates_of(work: Work, count: int, place: dict):
    batches = token_rows.padded_batches(work.documents, ROWS, LENGTH)
    for step in range(count):
        place["first"] = step * ROWS
        yield [batches[step % len(batches)]]


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "embedding", "experts", "lora-head", "dora-head", "ia3-head", "lora-dropout",
                                  "dora-dropout", "dora-head-dropout"])  # fmt: skip
def test_a_float32_trajectory_is_that_of_peft_in_a_plain_torch_loop(work, kind):
    torch.manual_seed(4)
    model = peft.get_peft_model(base_of(work, kind), peft_config(kind))
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:  # as PEFT draws them they drown the table
            parameter.data.mul_(0.1)
    start = work.folder / f"start-{kind}"
    model.save_pretrained(start)
    dropout = kind.endswith("-dropout")
    place = dropout_masks.put_on(model) if dropout else {}
    settings = torch_distiller.Settings(learning_rate=1e-2, total_steps=STEPS, warmup_steps=5, weight_decay=0.01,
                                        temperature=2.0)  # fmt: skip
    wanted = torch_distiller.distil(model, work.teacher, updates_of(work, STEPS, place), settings, dropout)
    # The rate is that of the folder.
    own = dict(adapter__from=start, adapter__kind="none", adapter__target=None, adapter__dropout=None, optim__learning_rate=1e-2,
               train__steps=f"{STEPS} steps")  # fmt: skip
    run = work.train(f"parity-{kind}", **(KEYS | keys_of(work, kind) | own))
    for name, series in (("loss", wanted.loss), ("kd", wanted.kd), ("ce", wanted.ce)):
        got = run.series(name)
        worst = max(abs(a - b) / abs(b) for a, b in zip(got, series, strict=True))
        print(f"{kind}, {name}: worst relative difference {worst:.2e}")
        assert worst < 1e-4, (name, worst)
    assert run.series("grad_norm") == pytest.approx(wanted.gradient_norm, rel=1e-3)
    assert run.series("loss")[-1] < 0.99 * run.series("loss")[0]
    model.save_pretrained(work.folder / f"end-{kind}")
    ended = load_file(work.folder / f"end-{kind}" / "adapter_model.safetensors")
    begun, ours = load_file(start / "adapter_model.safetensors"), load_file(run.folder / "final" / "adapter_model.safetensors")
    # Beside an adapter on the head or the embedding PEFT writes their own weights, which have not changed.
    base = {name for name in ended if "base_layer.weight" in name}
    assert ours.keys() == ended.keys() - base and all(torch.equal(ended[name], begun[name]) for name in base)
    for name in ours:
        tensor = ended[name]
        moved = (tensor - begun[name]).norm()
        assert moved > 0 and (ours[name] - tensor).norm() < 1e-2 * moved, name


OBJECTIVES = {name: dict(objective__divergence=name) for name in (
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "uld", "logit_mse", "topk_union",
    "dskd")} | {
    "projected": dict(projector__kind="logit"),
    "feature": dict(objective__feature_weight=1),
    "layers": dict(objective__layer_weight=1),
    "attention": dict(objective__attention_weight=1),
    "contrastive": dict(objective__contrastive_weight=1),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_an_adapter_the_gradient_of_the_weight_it_stands_for(work, name):
    """At W + s B A with B = 0, dL/dB = s dL/dW A^T and dL/dA = 0: Adam's first moments after one update say so."""
    keys = dict(train__steps="1 steps", checkpoint__every=1, optim__clip=0, optim__weight_decay=0, optim__warmup="0 steps")
    whole = work.train(f"weights-{name}", **keys, **OBJECTIVES[name])
    run = work.train(f"adapter-{name}", **(KEYS | keys | dict(adapter__target="[qvgud].*_proj") | OBJECTIVES[name]))
    assert run.series("loss") == pytest.approx(whole.series("loss"), rel=1e-6)
    weights, adapter = (
        {n.split("first_moment.")[1]: t for n, t in joined_state(newest_checkpoint(r.folder)).items() if "first_moment." in n} for r in (whole, run)
    )
    values = {n.removeprefix("model "): t for n, t in joined_state(newest_checkpoint(run.folder)).items() if n.startswith("model ")}
    moments = {n: t for n, t in adapter.items() if n.endswith("lora_B")}
    assert len(moments) == 2 * 5
    for path, moment in moments.items():
        host = path.removesuffix(".default.lora_B")
        low = values[f"{host}.default.lora_A"].double().view(KEYS["adapter__rank"], -1)
        wanted = 2 * weights[f"{host}.weight"].double().view(-1, low.shape[1]) @ low.T
        error = (moment.double().view_as(wanted) - wanted).norm() / wanted.norm()
        assert wanted.norm() > 0 and error < 1e-4, (path, float(error))
        assert not adapter[f"{host}.default.lora_A"].any()


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "dora-dropout"])
def test_an_adapter_on_the_head_learns_in_a_divided_vocabulary(work, kind):
    """The losses by row chunks, each rank with its part of the head: the curve of one process with the fused loss."""
    keys = KEYS | keys_of(work, kind) | dict(adapter__target="lm_head", train__accumulate=2, train__steps="6 steps",
                                             optim__learning_rate=3e-2)  # fmt: skip
    one = work.train(f"head-{kind}", **keys)
    run = work.folder / f"head-divided-{kind}"
    Ranks(2, work.recipe(f"head-divided-{kind}", **keys, objective__vocabulary_parallel="yes"), f"--run={run}").end().well()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "kd", "ce", "grad_norm"):
        assert [line[name] for line in lines if line["phase"] == "train"] == pytest.approx(one.series(name), rel=1e-4), name
    assert one.series("loss")[-1] < one.series("loss")[0]
    stored = load_file(one.folder / "final" / "adapter_model.safetensors")
    assert stored and all("lm_head" in name for name in stored)


CREATED = {
    "head": ("llama3", dict(adapter__target="lm_head")),
    "tied-head": ("llama3-tied", dict(adapter__target="lm_head")),
    "lora": ("llama3", {}),
    "rslora-patterns": ("llama3", dict(adapter__rslora="yes", adapter__rank_pattern="down_proj 7",
                                       adapter__alpha_pattern="layers.0.self_attn.v_proj 40")),
    "dora": ("qwen2", dict(adapter__kind="dora")),
    "some": ("llama3", dict(adapter__target=r"layers\.1\..*_proj")),
    "ia3": ("llama3", dict(adapter__kind="ia3")),
    "qwen3-moe": ("qwen3-moe", {}),
    "qwen3-moe-experts": ("qwen3-moe", dict(adapter__target=r"experts\..*_proj|v_proj", adapter__rank_pattern="experts.down_proj 3")),
    "qwen3-moe-one-stack": ("qwen3-moe", dict(adapter__target=r"layers\.[01]\.mlp\.experts\.down_proj|experts.gate_up_proj")),
    "mixtral-experts": ("mixtral", dict(adapter__target="experts.gate_up_proj", adapter__rslora="yes")),
    "embedding": ("llama3", dict(adapter__target="embed_tokens|v_proj", adapter__alpha_pattern="embed_tokens 40")),
    "tied-embedding": ("llama3-tied", dict(adapter__target="embed_tokens", adapter__rslora="yes")),
    "dora-embedding": ("llama3", dict(adapter__kind="dora", adapter__target="embed_tokens|q_proj")),
    "gpt2-embeddings": ("gpt2", dict(adapter__target="wte|wpe")),
    "gpt2": ("gpt2", {}),
    "gpt2-dora": ("gpt2", dict(adapter__kind="dora")),
    "gpt2-ia3": ("gpt2", dict(adapter__kind="ia3")),
    "phi3": ("phi3", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CREATED)
def test_what_was_trained_here_computes_the_same_in_peft(work, limbeck, name):
    family, keys = CREATED[name]
    family = model_zoo.BY_NAME[family]
    base = model_zoo.write_model(family, work.folder / f"base-{name}")
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    data = work.folder / f"data-{name}"
    token_rows.write(data, token_rows.random_documents(40, 6, LENGTH, min(vocabulary, VOCABULARY), seed=5), vocabulary)
    keys = KEYS | dict(student__model=base, student__dtype="float32", teacher__model=None, objective__alpha=0, data__train=data, data__validation=None,
                       optim__learning_rate=3e-2, train__steps="8 steps") | keys  # fmt: skip
    run = work.train(f"created-{name}", **keys)
    final = run.folder / "final"
    stored = load_file(final / "adapter_model.safetensors")
    inputs = model_zoo.make_inputs(family)
    model = peft.PeftModel.from_pretrained(model_zoo.load(family, base, torch.float32), final, autocast_adapter_dtype=False)
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[key], stored[key]) for key in stored)
    extra = {"use_cache": False} if family.kind == "decoder" else {}
    wanted = parity_measures.compared(family, inputs, model(**inputs.tensors, **extra)[family.output].detach())
    ours = parity_measures.compared(family, inputs, limbeck.forward(base, inputs.tensors, adapter=final)[family.output])
    plain = parity_measures.compared(family, inputs, limbeck.forward(base, inputs.tensors)[family.output])
    assert parity_measures.largest_error(plain, wanted) > 1e-3, "training moved next to nothing"
    assert parity_measures.largest_error(ours, wanted) <= 1e-5


HOSTS = {"embedding": {"embed_tokens", "self_attn.q_proj"},
         "experts": {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "self_attn.q_proj"}}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "embedding", "experts"])
def test_an_adapter_has_its_base_dtype_from_creation_to_export(work, limbeck, kind, dtype):
    """Create, train, resume, export, load again, merge: one row of the dtype table."""
    keys = KEYS | keys_of(work, kind) | dict(student__dtype=dtype, teacher__dtype=dtype, train__steps="6 steps",
                                             eval__every=3, checkpoint__every=3)  # fmt: skip
    name = f"dtypes-{kind}-{dtype}"
    report = work.folder / f"{name}-check.json"
    recipe = work.recipe(name, **keys)
    limbeck.run("check", str(recipe), f"--json={report}")
    rows = json.loads(report.read_text())["result"]["modules"]
    adapters = [row for row in rows if row["role"] == "adapter"]
    assert adapters and all({row[key] for key in ("storage", "in", "compute", "out")} == {dtype} for row in adapters)
    hosts = {row["module"].removeprefix("student.").removeprefix("layers.*.").removesuffix(".default") for row in adapters}
    assert hosts == HOSTS.get(kind, hosts) and all(row["module"].endswith(".default") for row in adapters)
    run = work.train(name, **keys)
    assert all(value == value and abs(value) < 1e4 for value in run.series("loss"))
    torch_dtype = getattr(torch, dtype)
    final = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch_dtype}
    masters = {key: tensor.dtype for key, tensor in joined_state(newest_checkpoint(run.folder)).items() if "master" in key}
    assert set(masters.values()) == (set() if dtype == "float32" else {torch.float32})

    shutil.rmtree(newest_checkpoint(run.folder))
    shutil.copytree(run.folder, work.folder / f"{name}-again")
    Ranks(1, recipe, f"--run={work.folder / (name + '-again')}").end().well()
    again = load_file(work.folder / f"{name}-again" / "final" / "adapter_model.safetensors")
    assert again.keys() == final.keys() and {tensor.dtype for tensor in again.values()} == {torch_dtype}

    merged = work.folder / f"{name}-merged"
    limbeck.run("merge", "--model", str(keys.get("student__model", work.folder / "student")), "--dtype", dtype, "--adapter", str(run.folder / "final"),
                "--output", str(merged))  # fmt: skip
    assert {tensor.dtype for tensor in load_file(merged / "model.safetensors").values()} == {torch_dtype}


def test_only_the_adapter_moves_and_only_it_is_kept(work, limbeck):
    before = load_file(work.folder / "student" / "model.safetensors")
    run = work.train("kept", **(KEYS | dict(checkpoint__every=10, adapter__target="q_proj")))
    names = {name.removeprefix("model ") for name in joined_state(newest_checkpoint(run.folder)) if name.startswith("model ")}
    assert names == {f"student.layers.{layer}.self_attn.q_proj.default.lora_{part}" for layer in (0, 1) for part in "AB"}
    after = load_file(work.folder / "student" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    # The first loss is that of the student as it is: B is zero.
    whole = work.train("kept-whole", train__steps="1 steps")
    assert run.series("loss")[0] == whole.series("loss")[0]
    merged = work.folder / "kept-merged"
    limbeck.run("merge", "--model", str(work.folder / "student"), "--adapter", str(run.folder / "final"), "--output", str(merged))
    changed = {name for name, tensor in load_file(merged / "model.safetensors").items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_evaluation_of_the_saved_adapter_is_that_of_the_run(work, limbeck):
    run = work.train("evaluated", **(KEYS | dict(eval__every=15)))
    out = work.folder / "evaluated-again.json"
    limbeck.run("eval", str(run.recipe), f"--checkpoint={run.folder / 'final'}", f"--json={out}")
    again, last = json.loads(out.read_text())["result"], [line for line in run.lines if line["phase"] == "eval"][-1]
    compared = {key for key in last if key in again and isinstance(last[key], float)}
    assert {"loss", "perplexity", "kl"} <= compared, (sorted(again), sorted(last))
    assert {key for key in compared if again[key] != last[key]} == set()


@pytest.mark.parametrize("kind", ["lora", "dora", "embedding", "experts"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_resumed_run_ends_with_the_same_bits(work, kind, dtype):
    keys = KEYS | keys_of(work, kind) | dict(student__dtype=dtype, teacher__dtype=dtype, checkpoint__every=5,
                                             checkpoint__keep=9, eval__every=10)  # fmt: skip
    name = f"resumed-{kind}-{dtype}"
    whole = work.train(name, threads=1, **keys)
    run = work.folder / f"{name}-again"
    shutil.copytree(whole.folder, run)
    for checkpoint in checkpoints(run)[2:]:
        shutil.rmtree(checkpoint)
    Ranks(1, whole.recipe, f"--run={run}").end().well()
    assert Outcome.of(run).differences(Outcome.of(whole.folder)) == []


def test_a_resumed_run_still_names_its_best(work):
    """An adapter's folder holds no config.json: the best model and its evaluation were dropped from the result."""
    keys = dict(adapter__kind="lora", adapter__rank=2, train__steps="4 steps", eval__every=2, checkpoint__every=2)
    first = work.train("best", threads=1, **keys)
    again = work.train("best", threads=1, **keys)  # nothing is left to train: what it says is from the folder
    assert again.result["best_model"] == first.result["best_model"] == str(first.folder / "best")
    assert (first.folder / "best" / "adapter_config.json").is_file() and not (first.folder / "best" / "config.json").exists()
    for key in ("best_step", "evaluated_step", "evaluation"):
        assert again.result[key] == first.result[key]


def test_another_base_is_not_resumed_on(work):
    run = work.train("digest", **(KEYS | dict(checkpoint__every=10)))
    other = work.folder / "student-other"
    shutil.copytree(work.folder / "student", other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    shutil.rmtree(newest_checkpoint(run.folder))
    ended = Ranks(1, work.recipe("digest", **(KEYS | dict(checkpoint__every=10, student__model=other))), f"--run={run.folder}").end()
    assert ended.codes == [4] and "student.model" in ended.errors[0], ended.errors[0]


@pytest.mark.parametrize("kind, zero", [*(("lora", zero) for zero in range(4)), ("embedding", 3), ("experts", 2), ("experts", 3),
                                        ("dora-dropout", 0), ("dora-dropout", 3)])  # fmt: skip
def test_two_ranks_give_the_bits_of_one(work, kind, zero):
    keys = KEYS | keys_of(work, kind) | dict(train__accumulate=4, train__steps="8 steps", parallel__reduce="tree", checkpoint__every=4)
    one = work.train(f"alone-{kind}-{zero}", threads=1, **keys)
    run = work.folder / f"two-{kind}-{zero}"
    Ranks(2, work.recipe(f"two-{kind}-{zero}", parallel__zero=zero, **keys), f"--run={run}").end().well()
    assert Outcome.of(run).differences(Outcome.of(one.folder)) == []


@pytest.mark.parametrize("how", ["same folder", "self"])
def test_teacher_and_student_from_one_folder_have_one_copy_of_the_base(work, limbeck, how):
    from training_work import llama, saved

    large = work.folder / "large"
    if not large.exists():
        saved(llama(256, 6, seed=3), large)
        shutil.copytree(large, work.folder / "large-copy")
    keys = KEYS | dict(student__model=large, adapter__target="q_proj", train__steps="3 steps", data__batch_size=2)
    own = dict(teacher__model=large) if how == "same folder" else dict(teacher__model=None, teacher__kind="self")
    shared = work.train(f"shared-{how[:4]}", **(keys | own))
    apart = work.train(f"apart-{how[:4]}", **(keys | dict(teacher__model=work.folder / "large-copy")))
    base = sum(tensor.nbytes for tensor in load_file(large / "model.safetensors").values())
    saving = apart.result["peak_bytes"] - shared.result["peak_bytes"]
    print(f"{how}: base {base / 2**20:.2f} MiB; peak {apart.result['peak_bytes'] / 2**20:.2f} MiB with two copies, "
          f"{shared.result['peak_bytes'] / 2**20:.2f} MiB with one")  # fmt: skip
    assert saving == pytest.approx(base, rel=0.02)
    for run in (shared, apart):
        assert run.result["planned_peak_bytes"] == pytest.approx(run.result["peak_bytes"], rel=0.05)
    assert shared.series("loss") == apart.series("loss")
    report = work.folder / "shared.json"
    limbeck.run("check", str(shared.recipe), f"--json={report}")
    memory = json.loads(report.read_text())["result"]["memory"]
    assert memory["teacher weights: the student's, shared"] == 0
    assert shared.series("kd")[0] == pytest.approx(0, abs=1e-9) and shared.series("kd")[-1] > 0


BOMB = 7  # a token whose attention scores overflow


def base_with_a_bomb(work: Work) -> Path:
    folder = work.folder / "bomb"
    if not folder.exists():
        shutil.copytree(work.folder / "student", folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][:, 0] = 0  # a direction of its own
        tensors["model.embed_tokens.weight"][BOMB, 0] = 1
        for name in ("q_proj", "k_proj"):
            tensors[f"model.layers.0.self_attn.{name}.weight"][:, 0] = 1e20
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def data_with_bombs(work: Work, where: range) -> Path:
    """Documents that fill a row each, those of `where` with the bomb in their middle."""
    documents = token_rows.random_documents(80, LENGTH, LENGTH, VOCABULARY, seed=9)
    for i, document in enumerate(documents):
        document[:] = [BOMB + 1 if token == BOMB else token for token in document]
        if i in where:
            document[LENGTH // 2] = BOMB
    folder = work.folder / f"bombs-{where.start}-{where.stop}"
    token_rows.write(folder, documents, VOCABULARY)
    return folder


def safe_keys(work: Work, where: range) -> dict:
    return KEYS | dict(train__safe_mode="yes", optim__learning_rate=1e-2, optim__clip=1.0, optim__warmup="0 steps",
                       optim__schedule="constant", student__model=base_with_a_bomb(work), data__train=data_with_bombs(work, where),
                       train__steps="15 steps")  # fmt: skip


def test_safe_mode_skips_a_batch_that_is_not_finite_and_names_a_tensor(work):
    recipe, run = work.recipe("safe", **safe_keys(work, range(2 * ROWS, 3 * ROWS))), work.folder / "run-safe"
    ended = Ranks(1, recipe, f"--run={run}").end().well()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["phase"] == "train"]
    skipped = [line["step"] for line in lines if line["skipped"] > 0]
    assert skipped == list(range(3, 16)) and lines[-1]["skipped"] == 1  # counted from the third update on
    assert "step 3: the gradient of student.layers." in ended.errors[0] and "update skipped (1 in a row, 1 in all)" in ended.errors[0]
    assert {line["lr"] for line in lines} == {1e-4}
    final = load_file(run / "final" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in final.values())


def test_ten_such_batches_in_a_row_end_the_run(work):
    recipe, run = work.recipe("unsafe", **safe_keys(work, range(2 * ROWS, 80))), work.folder / "run-unsafe"
    ended = Ranks(1, recipe, f"--run={run}").end()
    assert ended.codes == [5], ended.errors[0]
    assert "10 updates in a row were skipped" in ended.errors[0] and "student.layers." in ended.errors[0]


def test_clipping_in_safe_mode_is_at_a_half(work):
    """An update by the clipped gradient: Adam's first moment after one step is 0.1 of it."""
    keys = KEYS | dict(train__steps="1 steps", optim__warmup="0 steps", checkpoint__every=1, adapter__alpha=80)
    run = work.train("safe-clip", **keys, train__safe_mode="yes", optim__clip=0)
    moments = {name: tensor for name, tensor in joined_state(newest_checkpoint(run.folder)).items() if "first_moment" in name}
    norm = torch.cat([tensor.flatten().double() for tensor in moments.values()]).norm() / 0.1
    assert run.series("grad_norm")[0] > 0.5
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_the_spellings_of_other_trainers_are_accepted(work):
    """S1's names on the command line and at the top of a recipe give the run of our own names."""
    own = work.train("spelled-own", "--adapter.rank=3", "--data.batch_size=2", "--train.accumulate=2", "--optim.learning_rate=1e-3",
                     "--data.sequence_length=16", "--optim.weight_decay=0.1", "--train.log_every=2", "--checkpoint.every=4",
                     **KEYS)  # fmt: skip
    recipe = work.recipe("spelled-other", **{key: value for key, value in KEYS.items()})
    run = work.folder / "run-spelled-other"
    ended = Ranks(1, recipe, f"--output_dir={run}", f"--model_name={work.folder / 'student'}", "--adapter_rank=3", "--batch_size=2",
                  "--gradient_accumulation_steps=2", "--learning_rate=1e-3", "--max_length=16", "--weight_decay=0.1",
                  "--log_steps=2", "--save_steps=4").end().well()  # fmt: skip
    assert Outcome.of(run).differences(Outcome.of(own.folder)) == [], ended.errors[0]


def with_keys(**keys):
    return KEYS | keys


REFUSED = {
    "a random base": (with_keys(student__init="random"), "student.init = random"),
    "an average": (with_keys(teacher__kind="ema", teacher__model=None), "teacher.kind = self"),
    "IA3 on an embedding": (
        with_keys(adapter__kind="ia3", adapter__target="embed_tokens"),
        "[student.embed_tokens] is an embedding, on which there is no ia3, here and in PEFT: leave it out of adapter.target",
    ),
    "no such module": (with_keys(adapter__target="qproj"), "adapter.target qproj names no linear module"),
    "a broken pattern": (with_keys(adapter__target="q_(proj"), "is no regular expression"),
    "no rank": (with_keys(adapter__rank_pattern="q_proj"), 'wanted "MODULE RANK"'),
    "a rank of zero": (with_keys(adapter__rank_pattern="q_proj 0"), "wanted a rank of 1 to"),
    "a pattern of nothing": (with_keys(adapter__rank_pattern="o_prj 3"), "adapter.rank_pattern o_prj names no"),
    "dropout of IA3": (with_keys(adapter__kind="ia3", adapter__dropout=0.1), "adapter.dropout = 0.1"),
    "dropout of NPT": (with_keys(adapter__kind="npt", adapter__dropout=0.1), "of kind npt"),
    "dropout of everything": (with_keys(adapter__dropout=1), "wanted a number from 0 to below 1"),
    "dropout of experts": (
        with_keys(adapter__dropout=0.1, adapter__target=r"experts\..*_proj", student__model="sparse"),
        "stacks the weights of experts, on which there is no dropout, here and in PEFT",
    ),
    "no folder": (with_keys(adapter__from="/nowhere"), "/nowhere/adapter_config.json"),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_runs(work, case, command):
    keys, message = REFUSED[case]
    if keys.get("student__model") == "sparse":
        keys = keys | dict(student__model=sparse_student(work))
    refused_before_anything_runs(work, command, keys, message, code=4 if case == "no folder" else 2)


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_expert_stacks_take_lora_alone(work, kind):
    keys = KEYS | dict(student__model=sparse_student(work), adapter__kind=kind, adapter__target="experts.down_proj")
    refused_before_anything_runs(work, "check", keys, f"stacks the weights of experts, on which there is no {kind}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["embedding", "experts", "dora-dropout"])
def test_checkpointed_layers_give_the_same_bits_and_the_plan_holds(work, kind, dtype):
    keys = KEYS | keys_of(work, kind) | dict(student__dtype=dtype, train__steps="6 steps")
    runs = [work.train(f"{how}-{kind}-{dtype}", threads=1, train__checkpoint_activations=how, **keys) for how in ("no", "yes")]
    plain, checkpointed = runs
    assert plain.series("loss") == checkpointed.series("loss") and plain.series("grad_norm") == checkpointed.series("grad_norm")
    ended = [load_file(run.folder / "final" / "adapter_model.safetensors") for run in runs]
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    for run in runs:
        assert run.result["planned_peak_bytes"] == pytest.approx(run.result["peak_bytes"], rel=0.10)
