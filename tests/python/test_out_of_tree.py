"""A plug-in of a user's: a family with a token mixer of its own, an objective and two adapters, built outside of the tree
on an installed Limbeck (tests/out_of_tree), run through --plugin, and held against the same in plain PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import limbeck_runner
import pytest
import test_quantize_policies
import torch
import torch.nn.functional as F
from limbeck_runner import REPOSITORY, Limbeck, LimbeckError
from safetensors.torch import load_file, save_file
from training_work import LENGTH, ROWS, VOCABULARY, Outcome, Run, Work, newest_checkpoint

import token_rows
import torch_distiller

WIDTH, TAPS, STEPS, RATE, SCALE = 32, 3, 4, 1e-2, 0.5
TEMPERATURE = 2.0
OWN = dict(
    objective__divergence="brier", adapter__kind="row_gain", adapter__scale=SCALE, train__steps=f"{STEPS} steps",
    optim__learning_rate=RATE, optim__schedule="constant", optim__warmup="0 steps", student__dtype="float32", checkpoint__every=2,
)  # fmt: skip


class Linear(torch.nn.Linear):
    """With the adapter row_gain, where `gain` is there."""

    def __init__(self, inside: int, outside: int):
        super().__init__(inside, outside, bias=False)
        self.gain: torch.nn.Parameter | None = None

    def forward(self, x):
        y = super().forward(x)
        return y if self.gain is None else y * (1 + SCALE * self.gain)


class Kernel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, TAPS))

    def forward(self, z):
        return F.conv1d(F.pad(z.transpose(1, 2), (TAPS - 1, 0)), self.weight.flip(1)[:, None], groups=WIDTH).transpose(1, 2)


class Mixer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj, self.conv, self.out_proj = Linear(WIDTH, 3 * WIDTH), Kernel(), Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, c, u = self.in_proj(x).chunk(3, -1)
        return self.out_proj(c * self.conv(b * u))


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = Linear(WIDTH, 2 * WIDTH), Linear(WIDTH, 2 * WIDTH), Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (torch.nn.RMSNorm(WIDTH, eps=1e-5) for _ in range(2))
        self.conv, self.mlp = Mixer(), Mlp()

    def forward(self, x):
        h = x + self.conv(self.input_layernorm(x))
        return h + self.mlp(self.post_attention_layernorm(h))


class ShortConv(torch.nn.Module):
    """Causal and padded on the right: no mask is needed."""

    def __init__(self, layers: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.model.layers = torch.nn.ModuleList(Layer() for _ in range(layers))
        self.model.embedding_norm = torch.nn.RMSNorm(WIDTH, eps=1e-5)
        self.lm_head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.embedding_norm(x))

    def add_gains(self) -> dict[str, torch.nn.Parameter]:
        """By the names of the adapter's file."""
        self.requires_grad_(False)
        found = {}
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.gain = torch.nn.Parameter(torch.zeros(module.out_features))
                found[f"base_model.model.{name}.row_gain.gain"] = module.gain
        return found

    def save(self, folder: Path, **more) -> Path:
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors")
        layers = len(self.model.layers)
        config = {"architectures": ["ShortConvForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": layers,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 2 * WIDTH, "max_position_embeddings": 128,
                  "eos_token_id": 2, "conv_L_cache": TAPS, "layer_types": ["conv"] * layers, "dtype": "float32"}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config | more))
        return folder


class OwnWork(Work):
    def __init__(self, folder: Path, plugin: Path):  # another teacher and student than Work's
        self.folder, self.plugin, self.limbeck = folder, f"--plugin={plugin}", Limbeck()
        self.documents = token_rows.random_documents(40, 6, LENGTH, VOCABULARY, seed=5)
        for name in ("train", "validation"):
            token_rows.write(folder / name, self.documents, VOCABULARY)
        self.teacher, self.student = ShortConv(3, seed=1), ShortConv(2, seed=2)
        self.teacher.save(folder / "teacher")
        self.student.save(folder / "student")
        ShortConv(2, seed=2).save(folder / "wrong", wide_conv=True)

    def run(self, *arguments) -> subprocess.CompletedProcess:
        return self.limbeck.run(*map(str, arguments), self.plugin)

    def own(self, name: str, **keys) -> Run:
        return self.train(name, self.plugin, **(OWN | keys))

    def refused(self, *arguments) -> str:
        with pytest.raises(LimbeckError) as failure:
            self.run(*arguments)
        print(failure.value)
        return str(failure.value)

    def logits(self, ids: torch.Tensor, model: Path, *flags) -> torch.Tensor:
        source, output = self.folder / "in.safetensors", self.folder / "out.safetensors"
        save_file({"input_ids": ids}, source)
        self.run("forward", f"--model={model}", f"--input={source}", f"--output={output}", *flags)
        return load_file(output)["logits"]


def installed_program(*arguments, timeout: float) -> subprocess.CompletedProcess:
    command = [str(limbeck_runner.build_folder() / "bin" / "limbeck"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> OwnWork:
    """Limbeck installed into an empty folder, the plug-in built on that, and models of its family."""
    folder = tmp_path_factory.mktemp("out-of-tree")
    build, prefix, plugin = REPOSITORY / os.environ.get("LIMBECK_BUILD", "build/release"), folder / "prefix", folder / "plugin"
    entries = (line.split("=", 1) for line in (build / "CMakeCache.txt").read_text().splitlines() if "=" in line)
    found = {name.split(":")[0]: value for name, value in entries}
    if found.get("LIMBECK_SANITIZE") == "ON":
        pytest.skip("an installed Limbeck with AddressSanitizer is loaded by no plain program, nor a plain plug-in by it")
    launcher = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={found['LIMBECK_CCACHE']}"] if Path(found.get("LIMBECK_CCACHE", "")).is_file() else []
    for command in (
        ["cmake", "--install", build, "--prefix", prefix],
        ["cmake", "-G", "Ninja", "-S", REPOSITORY / "tests" / "out_of_tree", "-B", plugin, f"-DCMAKE_PREFIX_PATH={prefix}",
         f"-DCMAKE_CXX_COMPILER={found['CMAKE_CXX_COMPILER']}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
         "-DCMAKE_CXX_FLAGS_RELEASE=-DNDEBUG", *launcher],
        ["cmake", "--build", plugin],
    ):  # fmt: skip
        same_anywhere = dict(CCACHE_BASEDIR=str(folder), CCACHE_NOHASHDIR="1")
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, env=os.environ | same_anywhere)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_BUILD", str(prefix))  # the installed program is the one that runs, and nobody forks that
        patch.setattr(limbeck_runner, "run_program", installed_program)
        yield OwnWork(folder, plugin / "own_kinds.so")


def llama(work: OwnWork) -> Path:
    """check reads no weights."""
    config = json.loads((work.folder / "student" / "config.json").read_text()) | dict(architectures=["LlamaForCausalLM"], layer_types=None)
    folder = work.folder / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_list_shows_what_it_registers_and_without_it_names_are_refused(work):
    shown = {kind: work.run("list", kind).stdout for kind in ("models", "objectives", "adapters")}
    assert "short_conv" in shown["models"] and "in place of attention" in shown["models"] and "llama" in shown["models"]
    assert "brier" in shown["objectives"] and "row_gain" in shown["adapters"] and "bottleneck" in shown["adapters"]
    recipe, near = work.recipe("without", **OWN), ShortConv(2, seed=2).save(work.folder / "near", architectures=["ShortConvForCausaLM"])
    with pytest.raises(LimbeckError, match="adapter.kind = row_gain"):
        work.limbeck.run("check", str(recipe))
    said = work.refused("check", recipe, "--adapter.kind=row_gian")
    assert "--adapter.kind=row_gian: did you mean row_gain? wanted none, lora, dora, ia3, npt, row_gain or bottleneck" in said
    said = work.refused("check", work.recipe("near", **(OWN | dict(student__model=near))))
    assert '"architectures" = ShortConvForCausaLM is not supported: did you mean ShortConvForCausalLM? wanted one of' in said
    with pytest.raises(LimbeckError, match="ShortConvForCausalLM is not supported.*--plugin"):
        work.limbeck.run("check", str(work.recipe("bare", adapter__kind="none")))
    with pytest.raises(LimbeckError, match="objectives: brier is unknown: wanted forward_kl, "):
        work.limbeck.run("check", str(work.recipe("objective", objective__divergence="brier", teacher__model=None, teacher__kind="self", student__model=llama(work))))


def torch_run(work: OwnWork) -> tuple[ShortConv, dict[str, torch.nn.Parameter], list[float]]:
    student = ShortConv(2, seed=2)
    gains = student.add_gains()
    optimizer = torch.optim.AdamW(list(gains.values()), lr=RATE, weight_decay=0)
    losses = []
    for batch in token_rows.padded_batches(work.documents, ROWS, LENGTH)[:STEPS]:
        valid, targets = batch["labels"][:, 1:] != -100, torch_distiller.target_count(batch)
        with torch.no_grad():
            wanted = (work.teacher(batch["input_ids"])[:, :-1][valid] / TEMPERATURE).softmax(-1)
        logits = student(batch["input_ids"])[:, :-1][valid]
        brier = TEMPERATURE**2 * ((logits / TEMPERATURE).softmax(-1) - wanted).square().sum()
        loss = (0.5 * brier + 0.5 * F.cross_entropy(logits, batch["labels"][:, 1:][valid], reduction="sum")) / targets
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gains.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return student, gains, losses


def test_family_objective_and_adapter_train_as_in_plain_torch_and_are_loaded_resumed_and_merged(work):
    student, gains, losses = torch_run(work)
    run = work.own("whole", train__checkpoint_activations="yes")
    assert run.series("loss") == pytest.approx(losses, rel=1e-5)
    ours = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert ours.keys() == gains.keys()
    for name, gain in gains.items():
        assert gain.detach().norm() > 0 and (ours[name] - gain.detach()).norm() < 1e-3 * gain.detach().norm(), name

    plain = work.own("plain")
    assert Outcome.of(plain.folder).differences(Outcome.of(run.folder)) == []
    stopped = work.folder / "run-stopped"
    shutil.copytree(run.folder, stopped)
    shutil.rmtree(newest_checkpoint(stopped))
    work.run("train", run.recipe, f"--run={stopped}")
    assert Outcome.of(stopped).differences(Outcome.of(run.folder)) == []

    result = work.folder / "eval.json"
    work.run("eval", run.recipe, f"--run={run.folder}", "--json", result)
    assert json.loads(result.read_text())["result"]["perplexity"] == run.series("perplexity", "eval")[-1]

    ids = token_rows.padded_batches(work.documents, ROWS, LENGTH)[0]["input_ids"]
    with torch.no_grad():
        wanted = student(ids)
    adapter, merged = run.folder / "final", work.folder / "merged"
    beside = work.logits(ids, work.folder / "student", f"--adapter={adapter}")
    work.run("merge", f"--model={work.folder / 'student'}", f"--adapter={adapter}", f"--output={merged}")
    for logits in (beside, work.logits(ids, merged)):
        assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_an_adapter_of_a_whole_layer_trains_and_is_refused_by_name_where_it_cannot_be_merged(work):
    run = work.own("bottleneck", adapter__kind="bottleneck", adapter__rank=4)
    assert run.series("loss")[-1] < run.series("loss")[0]
    saved = load_file(run.folder / "final" / "adapter_model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in saved.items()} == {
        f"base_model.model.model.layers.{layer}.bottleneck.{part}": shape for layer in (0, 1) for part, shape in (("up", [WIDTH, 4]), ("down", [4, WIDTH]))
    }
    result = work.folder / "eval.json"
    work.run("eval", run.recipe, f"--run={run.folder}", "--json", result)
    assert json.loads(result.read_text())["result"]["perplexity"] == run.series("perplexity", "eval")[-1]
    said = work.refused("merge", f"--model={work.folder / 'student'}", f"--adapter={run.folder / 'final'}", f"--output={work.folder / 'no'}")
    assert "changes what the layer does and no weight (bottleneck), which cannot be merged" in said
    said = work.refused("check", run.recipe, "--adapter.target=q_proj|down_proj")
    assert "mlp.down_proj] is a linear module, on which there is no bottleneck (adapter.kind = bottleneck" in said


def damaged(folder: Path, to: Path, **config) -> Path:
    to.mkdir()
    (to / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (to / "adapter_config.json").write_text(json.dumps(json.loads((folder / "adapter_config.json").read_text()) | config))
    return to


def test_a_damaged_folder_of_its_adapter_is_refused_by_name(work):
    final = work.own("to-damage", train__steps="1 steps").folder / "final"
    modules = json.loads((final / "adapter_config.json").read_text())["target_modules"]
    cases = {
        "spelt": (dict(peft_type="row_gian"), 'peft_type is "row_gian", did you mean row_gain?'),
        "unknown": (dict(gian=1), 'key "gian" is none of a row_gain adapter\'s'),
        "fewer": (dict(target_modules=modules[1:]), "tensors have no place in this row_gain adapter"),
        "another": (dict(target_modules=[*modules, "lm_head"]), "tensor base_model.model.lm_head.row_gain.gain is missing"),
        "absent": (dict(target_modules=["model.layers.9.mlp.up_proj"]), "which this short_conv model has not"),
        "kind": (dict(target_modules=["model.embed_tokens"]), "is an embedding, on which there is no row_gain"),
    }
    ids = torch.ones(1, 2, dtype=torch.long)
    for name, (config, message) in cases.items():
        adapter = damaged(final, work.folder / f"damaged-{name}", **config)
        with pytest.raises(LimbeckError, match="exit 4") as failure:
            work.logits(ids, work.folder / "student", f"--adapter={adapter}")
        assert message in str(failure.value), (name, str(failure.value))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation_with_the_cache_of_its_mixer_equals_that_without(work, dtype):
    """One layer with a convolution, one with attention; prompts of two lengths, the shorter one padded on the left."""
    folder = work.folder / f"hybrid-{dtype}"
    hybrid = ShortConv(1, seed=3).state_dict()
    for name, tensor in list(hybrid.items()):
        if ".layers.0." in name and ".conv." not in name:
            hybrid[name.replace(".layers.0.", ".layers.1.")] = tensor.flip(0).clone()
    for name, rows in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2), ("o", WIDTH)):
        hybrid[f"model.layers.1.self_attn.{name}_proj.weight"] = torch.randn(rows, WIDTH) / 4
    ShortConv(1, seed=3).save(folder, num_hidden_layers=2, layer_types=["conv", "full_attention"])
    save_file(hybrid, folder / "model.safetensors")
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    both = [Limbeck().generate(folder, ids, mask, work.plugin, "--ignore-eos", f"--dtype={dtype}", *flags, new_tokens=24) for flags in ((), ("--no-cache",))]
    alone = Limbeck().generate(folder, ids[1:, 4:], mask[1:, 4:], work.plugin, "--ignore-eos", f"--dtype={dtype}", new_tokens=24)
    assert both[0].shape == (2, 9 + 24) and torch.equal(both[0], both[1]) and torch.equal(both[0][1, 9:], alone[0, 5:])
    assert len(set(both[0][0, 9:].tolist())) > 3


def test_taps_work_with_its_mixer_and_what_needs_attention_is_refused_by_name(work):
    taps = dict(adapter__kind="npt", adapter__rank=4, adapter__scale=0.1, teacher__model=None, teacher__kind="self",
                objective__equivalence_weight=1, objective__regularization=0.1)  # fmt: skip
    run = work.own("npt", **taps)
    again = work.own("npt-again", train__checkpoint_activations="yes", **taps)
    assert run.series("regularization")[-1] > 0  # what each layer's adapter keeps in the taps
    assert Outcome.of(run.folder).differences(Outcome.of(again.folder)) == []
    recipe = work.recipe("attention", **OWN)
    said = work.refused("check", recipe, "--objective.attention_weight=1")
    assert "mixes its tokens by conv, which has no attention maps to transfer: set objective.attention_weight = 0" in said


def test_a_sweep_reports_what_throws_as_failed_and_goes_on(work):
    """The mistake of the model "wrong" shows once its kernel is in half floats: with its whole layer."""
    recipe = work.recipe("sweep", teacher__kind="none", teacher__model=None, objective__alpha=0, student__model=work.folder / "wrong")
    done = work.run("sweep", recipe, f"--run={work.folder / 'swept'}", "--eval.batches=2", "--max-drop=100")
    result = json.loads((work.folder / "swept" / "sweep.json").read_text())
    failed = [one for one in result["candidates"] if one["status"] != "measured"]
    assert result["candidates"][-2:] == failed and [one["module"] for one in failed] == ["layers.0", "layers.1"]
    for number, one in enumerate(failed):
        assert one["status"] == "failed" and not one["selected"] and not one["pareto"]
        assert f"student.layers.{number}.conv.conv" in one["reason"] and "float16" in one["reason"], one["reason"]
        assert [one[key] for key in ("quality", "drop", "low", "high", "p", "kl", "score")] == [None] * 7
    lines = [line for line in done.stdout.splitlines() if line.startswith(("layers.0 ", "layers.1 "))]
    assert len(lines) == 2 and all("failed: " in line and "%" not in line for line in lines), done.stdout
    assert result["combined"]["status"] == "measured" and all("layers.0.conv.in_proj" != one["module"] or one["drop"] is not None
                                                              for one in result["candidates"])  # fmt: skip


def test_check_names_a_wrong_dtype_of_the_plug_in(work):
    keys = OWN | dict(student__model=work.folder / "wrong", student__dtype="bfloat16", teacher__dtype="bfloat16")
    said = work.refused("check", work.recipe("wrong", **keys))
    assert f"[student.layers.0.conv.conv] computes float32 [{ROWS},{LENGTH},{WIDTH}], wanted bfloat16" in said
    right = keys | dict(student__model=work.folder / "student")
    assert "bfloat16" in work.run("check", work.recipe("right", **right)).stdout


def test_a_program_of_ones_own_quantizes_a_model_as_the_command_does(work):
    base, ours, theirs = test_quantize_policies.llama(work.folder / "base"), work.folder / "own-quantized", work.folder / "quantized"
    program = work.folder / "plugin" / "own_quantize"
    done = subprocess.run([program, base, ours], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(tensor.nbytes for tensor in load_file(ours / "model.safetensors").values())
    work.limbeck.run("quantize", f"--model={base}", f"--output={theirs}", "--policy=static")
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    done = subprocess.run([program, base, ours], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "own-quantized" in done.stderr  # it is there already
