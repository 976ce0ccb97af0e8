#!/usr/bin/env python3
"""take_layers.py MODEL OUT --layers 0,2,4: a smaller model made of some layers of a larger one, to be distilled from it.

Everything beside the layers (embeddings, norms, head) is copied; the layers are renumbered in the order given. Reads and
writes Hugging Face folders, and loads no code of theirs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import guarded_work  # noqa: E402
from guarded_work import UsageFault, WeightsFault, one_line  # noqa: E402
from model_folder import ADVICE, copy_files, made, read_config, reading, write_config, write_weights  # noqa: E402
from token_shards import TOKENIZER_FILES  # noqa: E402

LAYER = re.compile(r"^((?:.*\.)?(?:layers|layer|h)\.)(\d{1,9})(\..+)$")  # the names of every family that Limbeck reads
COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
BESIDE = (*TOKENIZER_FILES, "generation_config.json")


def numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise UsageFault(f"--layers {one_line(text, 60)}: wanted numbers such as 0,2,4")
    return [int(part) for part in text.split(",")]


def new_config(path: Path, config: dict, layers: list[int]) -> dict:
    key = next((name for name in COUNTS if type(config.get(name)) is int), None)
    if key is None or config[key] < 1:
        raise WeightsFault(f"{path}: no number of layers, wanted one of {', '.join(COUNTS)}")
    beyond = [layer for layer in layers if not 0 <= layer < config[key]]
    if beyond:
        raise UsageFault(f"--layers {beyond[0]}: the model has layers 0 to {config[key] - 1}")
    types, dense = config.get("layer_types"), config.get("mlp_only_layers")
    config = {**config, key: len(layers)}
    if types is not None:
        if not isinstance(types, list) or len(types) <= max(layers):
            raise WeightsFault(f"{path}: layer_types, wanted a list with the type of each layer")
        config["layer_types"] = [types[layer] for layer in layers]
    if dense is not None:
        if not isinstance(dense, list):
            raise WeightsFault(f"{path}: mlp_only_layers, wanted a list of numbers")
        config["mlp_only_layers"] = [new for new, old in enumerate(layers) if old in dense]
    return config


def taken_tensors(folder: Path, layers: list[int]) -> dict:
    from safetensors import SafetensorError, safe_open
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsFault(f"{folder}: no .safetensors file, {ADVICE} with weights")
    new_numbers, taken = {}, {}
    for new, old in enumerate(layers):
        new_numbers.setdefault(old, []).append(new)
    whole = sum(path.stat().st_size for path in files)
    for path in files:
        reading(path, 2 * whole * max(map(len, new_numbers.values())))
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    match = LAYER.match(name)
                    if match is None:
                        taken[name] = file.get_tensor(name)
                        continue
                    for new in new_numbers.get(int(match[2]), []):
                        # A copy for each: tensors that share memory are refused when they are saved.
                        taken[f"{match[1]}{new}{match[3]}"] = file.get_tensor(name).clone()
        except (SafetensorError, KeyError, ValueError, AttributeError) as error:  # also of a dtype that torch lacks
            raise WeightsFault(f"{path}: no weights that can be read ({one_line(error, 160)}): {ADVICE}, whole") from None
    return taken


def take(a: argparse.Namespace) -> None:
    import safetensors.torch  # noqa: F401: before what is counted
    guarded_work.libraries_are_loaded()
    layers = numbers(a.layers)
    config = new_config(a.model / "config.json", read_config(a.model / "config.json"), layers)
    tensors = taken_tensors(a.model, layers)
    a.out.mkdir(parents=True, exist_ok=False)
    write_weights(tensors, a.out / "model.safetensors")
    copy_files((a.model / name for name in BESIDE), a.out)
    write_config(a.out, config)
    print(f"{a.out}: layers {a.layers} of {a.model}, {len(tensors)} tensors")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", required=True, metavar="I,J,...", help="counted from 0; one may come twice")
    a = parser.parse_args(arguments)
    return made("take_layers", a.out, lambda: take(a))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
