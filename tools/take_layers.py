#!/usr/bin/env python3
"""take_layers.py MODEL OUT --layers 0,2,4: a smaller model made of some layers of a larger one, to be distilled from it.

Everything beside the layers (embeddings, norms, head) is copied; the layers are renumbered in the order given. Reads and
writes Hugging Face folders, and loads no code of theirs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

LAYER = re.compile(r"^((?:.*\.)?(?:layers|layer|h)\.)(\d+)(\..+)$")  # the names of every family that Limbeck reads
COUNTS = ("num_hidden_layers", "n_layer", "n_layers")


class LayersError(Exception):
    pass


def numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise LayersError(f"--layers {text}: wanted numbers such as 0,2,4")
    return [int(part) for part in text.split(",")]


def read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LayersError(f"{path}: {error}; wanted the configuration of a Hugging Face model") from error
    if not isinstance(config, dict):
        raise LayersError(f"{path}: no JSON object, wanted the configuration of a Hugging Face model")
    return config


def new_config(config: dict, layers: list[int]) -> dict:
    key = next((name for name in COUNTS if isinstance(config.get(name), int)), None)
    if key is None:
        raise LayersError(f"config.json: no number of layers, wanted one of {', '.join(COUNTS)}")
    beyond = [layer for layer in layers if not 0 <= layer < config[key]]
    if beyond:
        raise LayersError(f"--layers {beyond[0]}: the model has layers 0 to {config[key] - 1}")
    config = {**config, key: len(layers)}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][layer] for layer in layers]
    if config.get("mlp_only_layers"):
        config["mlp_only_layers"] = [new for new, old in enumerate(layers) if old in config["mlp_only_layers"]]
    return config


def taken_tensors(folder: Path, layers: list[int]) -> dict:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LayersError(f"{folder}: no .safetensors file, wanted a Hugging Face folder with weights")
    new_numbers, taken = {}, {}
    for new, old in enumerate(layers):
        new_numbers.setdefault(old, []).append(new)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                match = LAYER.match(name)
                if match is None:
                    taken[name] = file.get_tensor(name)
                    continue
                for new in new_numbers.get(int(match[2]), []):
                    # A copy for each: tensors that share memory are refused when they are saved.
                    taken[f"{match[1]}{new}{match[3]}"] = file.get_tensor(name).clone()
    return taken


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", required=True, metavar="I,J,...", help="counted from 0; one may come twice")
    options = parser.parse_args(arguments)
    try:
        layers = numbers(options.layers)
        config = new_config(read_config(options.model / "config.json"), layers)
        tensors = taken_tensors(options.model, layers)
        options.out.mkdir(parents=True, exist_ok=False)
        save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
        (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
            if (options.model / name).is_file():
                shutil.copyfile(options.model / name, options.out / name)
    except (LayersError, OSError, SafetensorError) as error:
        print(f"take_layers: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: layers {options.layers} of {options.model}, {len(tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
