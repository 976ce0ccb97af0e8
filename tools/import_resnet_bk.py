#!/usr/bin/env python3
"""import_resnet_bk.py FILE OUT: the state_dict of the original ResNet-BK (.pt, .pth, .bin, .ckpt or .safetensors) as a folder that Limbeck reads.

  import_resnet_bk.py model.pt OUT --experts-per-token 2
  import_resnet_bk.py model.pt OUT --experts-per-token 1 --map 'net.{}.potential.weight=model.layers.{}.bk.v_proj.weight' --drop 'net.{}.seen'

TABLE has the original's names; --map adds to it or replaces a row ({} is any number, the same ones on both sides). A name that is
not there is found by its shape, its numbers and its last word where just one fits, and said. What is then left over or missing is
listed and refused; --drop PATTERN leaves tensors out, and says which.
The original sees both sides of a token, and so does what is made: the same logits. --causal makes a causal model of the same
weights, which has other logits and wants training. V comes from the normed stream; of the revisions that took it from the experts'
sum the names are the same and the logits differ.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_pickle  # noqa: E402
import guarded_work  # noqa: E402
import model_folder  # noqa: E402
from guarded_work import UsageFault, WeightsFault, one_line  # noqa: E402

LAYER, BK, MOE = "model.layers.{}", "blocks.{}.bk_layer", "blocks.{}.bk_layer.moe_ffn"
EXPERT, OUR_EXPERT = MOE + ".experts.{}", LAYER + ".mlp.experts.{}"
BOTH = ("weight", "bias")
TABLE = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "position_embedding.weight": "model.embed_positions.weight",
    **{f"blocks.{{}}.layer_norm.{one}": f"{LAYER}.input_layernorm.{one}" for one in BOTH},
    **{f"{BK}.v_proj.{one}": f"{LAYER}.bk.v_proj.{one}" for one in BOTH},
    **{f"{BK}.output_proj.{one}": f"{LAYER}.bk.o_proj.{one}" for one in BOTH},
    f"{BK}.bk_scale": f"{LAYER}.bk.core.scale",
    **{f"{MOE}.gating_network.{one}": f"{LAYER}.mlp.gate.{one}" for one in BOTH},
    **{f"{EXPERT}.0.{one}": f"{OUR_EXPERT}.up_proj.{one}" for one in BOTH},
    **{f"{EXPERT}.3.{one}": f"{OUR_EXPERT}.down_proj.{one}" for one in BOTH},  # behind a dropout
    **{f"{EXPERT}.2.{one}": f"{OUR_EXPERT}.down_proj.{one}" for one in BOTH},  # without one
    **{f"layer_norm_final.{one}": f"model.norm.{one}" for one in BOTH},
    **{f"lm_head.{one}": f"lm_head.{one}" for one in BOTH},
    # What our matrix has in itself, and z.
    f"{BK}.h0_diag_base": "diagonal.{}", f"{BK}.h0_super_base": "above.{}", f"{BK}.h0_sub_base": "below.{}",
    f"{BK}.z": "z.{}", f"{BK}.epsilon_param": "epsilon.{}", f"{BK}.gamma": "gamma.{}",
}  # fmt: skip
FIXED = {"diagonal": -2.0, "above": 1.0, "below": 1.0}
OF_POINT = ("z", "epsilon", "gamma")
PLACEHOLDER = re.compile(r"\{\}")
ADVICE = "take the state_dict of an original ResNet-BK, whole"
FEATURES_CUT = 10.0  # the original cuts features there; |G| is at most 1 / height


def pattern(name: str) -> re.Pattern[str]:
    return re.compile("([0-9]{1,9})".join(map(re.escape, PLACEHOLDER.split(name))))


def with_numbers(name: str, numbers: list[str]) -> str:
    left = iter(numbers)
    return PLACEHOLDER.sub(lambda _: next(left), name)


def numbers_of(name: str) -> list[str]:
    return re.findall(r"(?<=\.)[0-9]{1,9}(?=\.|$)", f".{name}")


def rows_of(maps: list[str]) -> dict[str, str]:
    """--map's rows, before those of the table that stand for something else."""
    known, rows = set(TABLE.values()), {}
    for said in maps:
        theirs, equals, ours = said.partition("=")
        if not equals or not theirs or ours not in known:
            raise UsageFault(f"--map {one_line(said, 200)}: wanted FROM=TO with one of these as TO: {', '.join(sorted(known))}")
        if theirs.count("{}") != ours.count("{}"):
            raise UsageFault(f"--map {one_line(said, 200)}: wanted as many {{}} on the left as on the right")
        rows[theirs] = ours
    return rows | {theirs: ours for theirs, ours in TABLE.items() if theirs not in rows}


def state_of(path: Path) -> dict:
    if path.suffix != ".safetensors":
        return convert_pickle.tensors_of(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    size = path.stat().st_size if path.exists() else 0
    guarded_work.step("reading it", path, 60, guarded_work.GIB + 3 * size, ADVICE, guarded_work.WEIGHTS)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:  # also of a dtype that torch lacks
        raise WeightsFault(f"{path}: no weights that can be read ({one_line(error, 160)}): {ADVICE}") from None


class Import:
    def __init__(self, path: Path, options: argparse.Namespace):
        self.path, self.options = path, options
        self.left, self.found, self.came_from = state_of(path), {}, {}
        # Before rows are looked at: what is dropped may be what a row means.
        for name in [name for name in self.left if any(pattern(one).fullmatch(name) for one in options.drop)]:
            print(f"{one_line(name, 200)}: left out, as --drop says")
            del self.left[name]

    def take(self, name: str, ours: str) -> None:
        if ours in self.found:
            raise WeightsFault(f"{self.path}: {one_line(self.came_from[ours], 80)} and {one_line(name, 80)} both stand for {ours}: --drop one of them")
        self.found[ours], self.came_from[ours] = self.left.pop(name), name

    def take_by_name(self) -> None:
        rows = [(pattern(theirs), ours) for theirs, ours in rows_of(self.options.map).items()]
        for name in list(self.left):
            for theirs, ours in rows:
                if match := theirs.fullmatch(name):
                    self.take(name, with_numbers(ours, list(match.groups())))
                    break

    def sizes(self) -> dict[str, int]:
        """From what is known by name, or by the numbers in the names."""
        tokens, positions = (self.found.get(f"model.embed_{what}.weight") for what in ("tokens", "positions"))
        for what, table in (("tokens", tokens), ("positions", positions)):
            if table is None or table.dim() != 2:
                raise WeightsFault(f"{self.path}: no embedding of {what} among {self.strangers()}: say --map NAME=model.embed_{what}.weight")
        names = [*self.came_from.values(), *self.left]
        layers = 1 + max((int(numbers[0]) for numbers in map(numbers_of, names) if numbers), default=-1)
        gates = [tensor for name, tensor in self.found.items() if ".mlp.gate." in name]
        inner = [tensor for name, tensor in self.found.items() if name.endswith((".up_proj.weight", ".up_proj.bias"))]
        if layers < 1 or not gates or not inner or 0 in {tensor.dim() for tensor in (*gates, *inner)}:
            raise WeightsFault(f"{self.path}: no layers with a gate and experts among {self.strangers()}: say --map FROM=TO of a gate and of an up_proj")
        experts = len(gates[0])
        if max(layers, experts) > len(names):
            raise WeightsFault(f"{self.path}: {len(names)} tensors cannot be {layers} layers with a gate to {experts} experts each: {ADVICE}")
        return {"vocab_size": len(tokens), "hidden_size": tokens.shape[1], "max_position_embeddings": len(positions),
                "num_hidden_layers": layers, "num_experts": experts, "intermediate_size": len(inner[0])}  # fmt: skip

    def wanted(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        d, f, e = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_experts"]
        shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], d), "model.embed_positions.weight": (sizes["max_position_embeddings"], d),
                  "model.norm.weight": (d,), "model.norm.bias": (d,), "lm_head.weight": (sizes["vocab_size"], d),
                  "lm_head.bias": (sizes["vocab_size"],)}  # fmt: skip
        for i in range(sizes["num_hidden_layers"]):
            layer = with_numbers(LAYER, [str(i)])
            shapes |= {f"{layer}.input_layernorm.weight": (d,), f"{layer}.input_layernorm.bias": (d,), f"{layer}.bk.v_proj.weight": (1, d),
                       f"{layer}.bk.v_proj.bias": (1,), f"{layer}.bk.o_proj.weight": (d, 2), f"{layer}.bk.o_proj.bias": (d,),
                       f"{layer}.bk.core.scale": (), f"{layer}.mlp.gate.weight": (e, d), f"{layer}.mlp.gate.bias": (e,)}  # fmt: skip
            for k in range(e):
                expert = f"{layer}.mlp.experts.{k}"
                shapes |= {f"{expert}.up_proj.weight": (f, d), f"{expert}.up_proj.bias": (f,), f"{expert}.down_proj.weight": (d, f),
                           f"{expert}.down_proj.bias": (d,)}  # fmt: skip
        return shapes

    def take_by_shape(self, wanted: dict[str, tuple[int, ...]]) -> None:
        def key(name: str, shape: tuple[int, ...], numbers: int) -> tuple:
            last = name.rsplit(".", 1)[-1]
            return (numbers, *numbers_of(name)[:numbers], tuple(shape), last if last in BOTH else "")

        def by_key(shapes: dict[str, tuple[int, ...]]) -> dict[tuple, list[str]]:
            found: dict[tuple, list[str]] = {}
            for name, shape in shapes.items():
                for numbers in range(3):  # none, of a layer, of an expert
                    found.setdefault(key(name, shape, numbers), []).append(name)
            return found

        took = True
        while took:  # what was one of several may be the only one now
            took, missing = False, {name: shape for name, shape in wanted.items() if name not in self.found}
            rivals, fitting = by_key(missing), by_key({name: tuple(tensor.shape) for name, tensor in self.left.items()})
            for ours, shape in missing.items():
                mine = key(ours, shape, len(numbers_of(ours)))
                fit = fitting.get(mine, [])
                if len(fit) == len(rivals[mine]) == 1 and fit[0] in self.left:
                    print(f"{one_line(fit[0], 200)}: taken for {ours}, by its shape alone")
                    self.take(fit[0], ours)
                    took = True

    def strangers(self) -> str:
        names = [f"{one_line(name, 120)} {list(tensor.shape)}" for name, tensor in self.left.items()]
        return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "") if names else "(nothing else)"

    def refuse_what_does_not_fit(self, wanted: dict[str, tuple[int, ...]]) -> None:
        missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in self.found]
        if missing or self.left:
            said = ", ".join(missing[:40]) + (f" and {len(missing) - 40} more" if len(missing) > 40 else "")
            raise WeightsFault(f"{self.path}: left over: {self.strangers()}; missing: {said or '(nothing)'}: say --map FROM=TO or --drop PATTERN for each")
        for name, shape in wanted.items():
            got = tuple(self.found[name].shape)
            if got != shape and not (name.endswith(".core.scale") and got in ((1,), wanted["model.norm.weight"])):
                raise WeightsFault(f"{self.path}: {one_line(self.came_from[name], 120)} is {list(got)}, wanted {list(shape)} as {name}: {ADVICE}")

    def height(self) -> float:
        """Im z, one for all layers; what stands for parts of the matrix is looked at and left out."""
        parts: dict[str, dict[str, complex]] = {}
        for name in [name for name in self.found if name.partition(".")[0] in (*FIXED, *OF_POINT)]:
            kind, _, layer = name.partition(".")
            value, came_from = self.found.pop(name), one_line(self.came_from[name], 120)
            if kind in FIXED:
                if not bool((value == FIXED[kind]).all()):
                    raise WeightsFault(f"{self.path}: {came_from} is not {FIXED[kind]:g} everywhere, which our matrix has there: no model of ours has it")
                print(f"{came_from}: {FIXED[kind]:g} everywhere, as our matrix has it")
            elif value.numel() != 1 or (kind != "z" and value.is_complex()):
                raise WeightsFault(f"{self.path}: {came_from} is {value.dtype} {list(value.shape)}, wanted one number")
            else:
                parts.setdefault(layer, {})[kind] = complex(value.reshape(()).item())
        points = set()
        for part in parts.values():
            point = part.get("z", 1j)
            if "epsilon" in part:  # softplus of it stands in the place of Im z
                x = part["epsilon"].real
                point = complex(point.real, max(x, 0) + math.log1p(math.exp(-abs(x))) + 1e-6)
            points.add(point + part.get("gamma", 0) * 1j)
        points = points or {1j}
        point = points.pop()
        if points or point.real != 0 or not point.imag > 0:
            raise WeightsFault(f"{self.path}: z is {', '.join(map(str, [point, *sorted(points, key=str)][:5]))}, wanted one on the upper imaginary axis for all layers")
        if point.imag < 1 / FEATURES_CUT:
            print(f"z = {point.imag:g}i: the original cuts features at {FEATURES_CUT:g}, which are up to {1 / point.imag:g} here and stay whole")
        return point.imag

    def scale_outputs(self, layers: int) -> None:
        """Theirs is scale (W g + bias), ours W (scale g) + bias with one number for a layer."""
        for i in range(layers):
            at = with_numbers(LAYER, [str(i)]) + ".bk"
            scale, weight = self.found[f"{at}.core.scale"], self.found[f"{at}.o_proj.weight"]
            self.found[f"{at}.o_proj.bias"] = self.found[f"{at}.o_proj.bias"] * scale
            if scale.numel() == 1:
                self.found[f"{at}.core.scale"] = scale.reshape(1)
            else:
                self.found[f"{at}.o_proj.weight"], self.found[f"{at}.core.scale"] = weight * scale[:, None], scale.new_ones(1)
                print(f"{self.came_from[f'{at}.core.scale']}: a scale a channel, multiplied into {at}.o_proj")

    def config(self, sizes: dict[str, int], height: float) -> dict:
        causal, dtype = self.options.causal, str(self.found["model.embed_tokens.weight"].dtype).removeprefix("torch.")
        return {"architectures": ["ResNetBKForCausalLM" if causal else "ResNetBKForMaskedLM"], "model_type": "resnet_bk", **sizes,
                "num_experts_per_tok": min(self.options.experts_per_token, sizes["num_experts"]), "causal": causal, "bk_heads": 1, "bk_z": height,
                "bk_clamp": self.options.clamp, "layer_norm_eps": 1e-5, "output_bias": True, "head_bias": True,
                "tie_word_embeddings": False, "torch_dtype": dtype}  # fmt: skip

    def write(self, out: Path) -> None:
        self.take_by_name()
        sizes = self.sizes()
        wanted = self.wanted(sizes)
        self.take_by_shape(wanted)
        height = self.height()
        self.refuse_what_does_not_fit(wanted)
        if any(not tensor.is_floating_point() for tensor in self.found.values()):
            raise WeightsFault(f"{self.path}: weights that are no floating numbers: {ADVICE}")
        self.scale_outputs(sizes["num_hidden_layers"])
        out.mkdir(parents=True, exist_ok=False)
        model_folder.write_weights({name: tensor.clone().contiguous() for name, tensor in self.found.items()}, out / "model.safetensors")
        config = self.config(sizes, height)
        model_folder.write_config(out, config)
        print(f"{out}: {config['architectures'][0]}, {len(self.found)} tensors, {sum(t.numel() for t in self.found.values()):,} parameters; no tokenizer")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts-per-token", type=int, required=True, metavar="K", help="top_k of the original, which no tensor tells")
    parser.add_argument("--causal", action="store_true", help="a causal model of these weights, whose logits differ")
    parser.add_argument("--clamp", type=float, default=3.0, help="v_max of the original, which no tensor tells (default: 3)")
    parser.add_argument("--map", action="append", default=[], metavar="FROM=TO")
    parser.add_argument("--drop", action="append", default=[], metavar="PATTERN")
    a = parser.parse_args(arguments)

    def work() -> None:
        if not a.file.is_file():
            raise UsageFault(f"{a.file}: no such file")
        if a.experts_per_token < 1 or not 1e-6 <= a.clamp <= 1e6:
            raise UsageFault("--experts-per-token and --clamp: wanted 1 or more, and a number from 1e-6 to 1e6")
        if a.out.exists():
            raise UsageFault(f"{a.out}: is there already: remove it, or name another")
        import safetensors.torch  # noqa: F401
        guarded_work.libraries_are_loaded()
        Import(a.file, a).write(a.out)

    return model_folder.made("import_resnet_bk", a.out, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
