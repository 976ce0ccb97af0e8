"""The original ResNet-BK's state_dict as a folder of ours: a small model with its names and formulas in plain PyTorch, whose logits
ours must have; names that are not its own; and what is refused rather than dropped."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import warm_python
from limbeck_runner import REPOSITORY
from torch import nn

VOCABULARY, WIDTH, LENGTH, EXPERTS, LAYERS = 71, 16, 24, 3, 2


class Experts(nn.Module):
    def __init__(self, top_k: int):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH))
                                     for _ in range(EXPERTS))  # fmt: skip
        self.gating_network, self.top_k = nn.Linear(WIDTH, EXPERTS), top_k

    def forward(self, n):
        best, chosen = self.gating_network(n).topk(self.top_k, -1)
        weights = torch.zeros(*n.shape[:-1], EXPERTS).scatter(-1, chosen, best.softmax(-1))
        return sum(weights[..., k : k + 1] * expert(n) for k, expert in enumerate(self.experts))


class Core(nn.Module):
    def __init__(self, top_k: int, scale: torch.Tensor, height: float):
        super().__init__()
        self.moe_ffn, self.v_proj, self.output_proj = Experts(top_k), nn.Linear(WIDTH, 1), nn.Linear(2, WIDTH)
        self.bk_scale = nn.Parameter(scale)
        for name, value, size in (("h0_diag_base", -2.0, LENGTH), ("h0_sub_base", 1.0, LENGTH - 1), ("h0_super_base", 1.0, LENGTH - 1)):
            self.register_buffer(name, torch.full((1, size), value))
        self.register_buffer("z", torch.tensor(1j * height, dtype=torch.complex64))

    def forward(self, n):
        v = self.v_proj(n).squeeze(-1).clamp(-3, 3)
        matrix = torch.diag_embed((self.h0_diag_base + v).to(torch.complex128) - self.z)
        matrix = matrix + torch.diag_embed(self.h0_super_base, 1) + torch.diag_embed(self.h0_sub_base, -1)
        green = torch.linalg.inv(matrix).diagonal(dim1=-2, dim2=-1)
        features = torch.stack([green.real, green.imag], -1).float().clamp(-10, 10)
        return self.moe_ffn(n) + self.bk_scale * self.output_proj(features)


class Block(nn.Module):
    def __init__(self, *core):
        super().__init__()
        self.layer_norm, self.bk_layer = nn.LayerNorm(WIDTH), Core(*core)

    def forward(self, x):
        return x + self.bk_layer(self.layer_norm(x))


class Original(nn.Module):
    def __init__(self, top_k: int = 2, scale: torch.Tensor | None = None, height: float = 1.0):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(top_k, torch.tensor(1.7) if scale is None else scale.clone(), height) for _ in range(LAYERS))
        self.layer_norm_final, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        h = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.lm_head(self.layer_norm_final(h))


def original(**options) -> Original:
    torch.manual_seed(4)
    model = Original(**options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("bk_scale"):
                parameter.add_(0.3 * torch.randn_like(parameter))  # no bias of 0, no norm of 1
    return model


def imported(folder, state, *flags):
    torch.save(state, folder / "original.pt")
    return warm_python.completed([REPOSITORY / "tools" / "import_resnet_bk.py", folder / "original.pt", folder / "ours", "--experts-per-token=2", *flags], timeout=60)


def made(folder, state, *flags) -> str:
    done = imported(folder, state, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(folder, state, *flags) -> str:
    done = imported(folder, state, *flags)
    assert done.returncode in (2, 4) and not (folder / "ours").exists(), done.stdout + done.stderr
    return done.stderr


def assert_logits_are(limbeck, folder, model) -> None:
    ids = (torch.arange(2 * LENGTH) * 37 % VOCABULARY).view(2, LENGTH)
    with torch.no_grad():
        wanted = model(ids)
    got = limbeck.forward(folder / "ours", {"input_ids": ids})["logits"]
    assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()  # float32, as the zoo's families


def without(state: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.endswith(names)}


@pytest.mark.parametrize("options", [{}, {"scale": torch.linspace(-1, 2, WIDTH)}, {"height": 0.4}], ids=["one scale", "a scale a channel", "z = 0.4i"])
def test_logits_are_the_originals(limbeck, tmp_path, options):
    model = original(**options)
    said = made(tmp_path, {"model_state_dict": model.state_dict(), "epoch": 3})
    assert_logits_are(limbeck, tmp_path, model)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["bk_z"] == pytest.approx(options.get("height", 1.0), rel=1e-6) and config["num_experts_per_tok"] == 2
    assert ("multiplied into" in said) == ("scale" in options)
    assert all(f"blocks.{i}.bk_layer.h0_diag_base: -2 everywhere" in said for i in range(LAYERS))


def test_a_causal_one_is_asked_for_and_generates(limbeck, tmp_path):
    made(tmp_path, original().state_dict(), "--causal")
    prompt = torch.tensor([[3, 4, 5]])
    assert limbeck.generate(tmp_path / "ours", prompt, torch.ones_like(prompt), new_tokens=4).shape[-1] >= 4


def test_names_of_others_are_mapped_or_found_by_shape(limbeck, tmp_path):
    model = original()
    state = {name.replace("blocks.", "net.trunk.").replace("token_embedding", "words").replace("v_proj", "potential"): tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    maps = ["words.weight=model.embed_tokens.weight", "net.trunk.{}.bk_layer.moe_ffn.gating_network.{}"]
    assert "as many {} on the left" in refused(tmp_path, state, "--map", "x.{}=model.norm.weight")
    assert "with one of these as TO" in refused(tmp_path, state, "--map", maps[1])
    assert "no embedding of tokens among words.weight [71, 16]" in refused(tmp_path, state)
    core = "net.trunk.{}.bk_layer"
    rows = {"words.weight": "model.embed_tokens.weight"}
    for one in ("weight", "bias"):
        rows |= {f"{core}.moe_ffn.gating_network.{one}": f"model.layers.{{}}.mlp.gate.{one}",
                 f"{core}.moe_ffn.experts.{{}}.0.{one}": f"model.layers.{{}}.mlp.experts.{{}}.up_proj.{one}"}  # fmt: skip
    flags = [word for theirs, ours in rows.items() for word in ("--map", f"{theirs}={ours}")]
    said = refused(tmp_path, state, *flags)
    assert "net.trunk.1.layer_norm.bias [16]" in said and "model.layers.0.bk.o_proj.bias [16]" in said  # two of a shape
    rows |= {f"{core}.output_proj.bias": "model.layers.{}.bk.o_proj.bias", f"{core}.z": "z.{}", f"{core}.h0_diag_base": "diagonal.{}",
             f"{core}.h0_super_base": "above.{}", f"{core}.h0_sub_base": "below.{}"}  # fmt: skip
    flags = [word for theirs, ours in rows.items() for word in ("--map", f"{theirs}={ours}")]
    said = made(tmp_path, state, *flags)
    assert "net.trunk.1.bk_layer.potential.weight: taken for model.layers.1.bk.v_proj.weight, by its shape alone" in said
    assert_logits_are(limbeck, tmp_path, model)


def test_nothing_is_dropped_unsaid(limbeck, tmp_path):
    model = original()
    state = model.state_dict()
    extra = state | {"blocks.0.bk_layer.halting.weight": torch.ones(5, 2), "seen": torch.ones(3)}
    said = refused(tmp_path, extra)
    assert "left over: blocks.0.bk_layer.halting.weight [5, 2], seen [3]; missing: (nothing)" in said
    said = refused(tmp_path, without(state, "1.layer_norm.bias"))
    assert "missing: model.layers.1.input_layernorm.bias [16]" in said
    said = made(tmp_path, extra, "--drop", "seen", "--drop", "blocks.{}.bk_layer.halting.weight")
    assert "seen: left out, as --drop says" in said and "halting.weight: left out" in said
    assert_logits_are(limbeck, tmp_path, model)


def test_another_matrix_or_point_is_refused(tmp_path):
    state = original().state_dict()
    other = state["blocks.1.bk_layer.h0_sub_base"].clone()
    other[0, 3] = 0.5
    assert "blocks.1.bk_layer.h0_sub_base is not 1 everywhere" in refused(tmp_path, state | {"blocks.1.bk_layer.h0_sub_base": other})
    for z in (torch.tensor(0.5j), torch.tensor(0.1 + 1j), torch.tensor(-1j)):
        assert "wanted one on the upper imaginary axis for all layers" in refused(tmp_path, state | {"blocks.0.bk_layer.z": z})
    assert "is [16, 3], wanted [16, 2] as model.layers.0.bk.o_proj.weight" in refused(
        tmp_path, state | {"blocks.0.bk_layer.output_proj.weight": torch.ones(WIDTH, 3)})  # fmt: skip
    (tmp_path / "ours").mkdir()
    done = imported(tmp_path, state)
    assert done.returncode == 2 and "is there already" in done.stderr


def test_a_learned_height_is_theirs(limbeck, tmp_path):
    """Later revisions: z = i (softplus(epsilon) + 1e-6) + i gamma, a number a layer."""
    state = without(original().state_dict(), ".z")
    for i in range(LAYERS):
        state |= {f"blocks.{i}.bk_layer.epsilon_param": torch.tensor(0.3), f"blocks.{i}.bk_layer.gamma": torch.tensor(0.05)}
    made(tmp_path, state)
    height = float(F.softplus(torch.tensor(0.3))) + 1e-6 + 0.05
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["bk_z"] == pytest.approx(height, rel=1e-6)
    assert_logits_are(limbeck, tmp_path, original(height=height))
