#!/usr/bin/env python3
"""Converts pickled PyTorch weights (.bin, .pt, .pth, .ckpt) to safetensors, in a process of its own.

    tools/convert_pickle.py FOLDER [--out FOLDER]      a Hugging Face folder, sharded or not
    tools/convert_pickle.py FILE   [--out FOLDER]      one checkpoint file

Limbeck itself never opens a pickle: reading one can run code. This uses torch.load(weights_only=True), which refuses
most of that but has had holes (CVE-2025-32434, CVE-2026-24747): for weights from strangers run it in a container
without network, and take the result.
"""
import argparse
import json
import pathlib
import sys

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def fail(message):
    print(f"convert_pickle: {message}", file=sys.stderr)
    sys.exit(3)


def pickled_files(source):
    """The checkpoint's files, in order."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        fail(f"{source}: no such file or folder")
    index = source / "pytorch_model.bin.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            fail(f"{index}: no index of weights ({type(error).__name__}: {str(error)[:100]}), wanted "
                 '{"weight_map": {"NAME": "FILE.bin"}}')
        for name in names:
            if not isinstance(name, str) or pathlib.PurePath(name).name != name:
                fail(f"{index}: {name!r} is a path, wanted a bare file name")
        return [source / name for name in names]
    if (source / "pytorch_model.bin").is_file():
        return [source / "pytorch_model.bin"]
    found = sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and p.name != "training_args.bin")
    if len(found) != 1:
        fail(f"{source}: wanted one checkpoint, found {[p.name for p in found]}: name the file")
    return found


def tensors_of(path):
    import torch
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's file makes torch raise: it is the file's fault
        fail(f"{path}: torch.load(weights_only=True) refuses it ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
             "wanted a checkpoint of tensors alone, whole")
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        fail(f"{path}: holds {type(loaded).__name__}, wanted a dictionary of tensors")
    strangers = [name for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)
                 or value.layout != torch.strided or value.is_quantized or value.is_meta]
    if strangers:
        fail(f"{path}: these are no tensors: {', '.join(map(str, strangers[:10]))}: extract the weights first")
    return loaded


def unshared(tensors, seen):
    """Contiguous copies; a tensor stored under several names (tied weights) is kept under the first alone."""
    kept = {}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() > 0 and key in seen:
            print(f"{name}: the same tensor as {seen[key]}, left out")
            continue
        seen[key] = name
        kept[name] = tensor.clone().contiguous()
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, metavar="FOLDER|FILE")
    parser.add_argument("--out", type=pathlib.Path, help="where to write (default: beside the source)")
    arguments = parser.parse_args()
    from safetensors.torch import save_file

    files = pickled_files(arguments.source)
    out = arguments.out or (arguments.source if arguments.source.is_dir() else arguments.source.parent)
    out.mkdir(parents=True, exist_ok=True)
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for target in [*names, "model.safetensors.index.json"]:
        if (out / target).exists():
            fail(f"{out / target}: is there already: remove it, or name another --out")
    weight_map, total = {}, 0
    for path, target in zip(files, names):
        tensors = unshared(tensors_of(path), {})
        for name, tensor in tensors.items():
            if name in weight_map:
                fail(f"{path}: {name} is in {weight_map[name]} too")
            weight_map[name] = target
            total += tensor.numel() * tensor.element_size()
        try:
            save_file(tensors, out / target, metadata={"format": "pt"})
        except Exception as error:  # a dtype that safetensors lacks, a disk that is full
            (out / target).unlink(missing_ok=True)
            fail(f"{out / target}: cannot be written: {' '.join(str(error).split())[:200]}")
        print(f"{path.name}: {len(tensors)} tensors to {out / target}")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"convert_pickle: {error}", file=sys.stderr)
        sys.exit(6)
