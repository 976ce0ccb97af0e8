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
import os
import pathlib
import shutil
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import guarded_work  # noqa: E402
from guarded_work import UsageFault, WeightsFault, one_line  # noqa: E402
from model_folder import write_weights  # noqa: E402

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEX, WEIGHTS_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"
SECONDS, SECONDS_A_BYTE = 20, 2e-8  # of processor time, for reading a file
BYTES_A_BYTE = 4  # of memory: what is read, its copy, and the file that is written
ADVICE = "take the weights from a source that you trust, whole"


def files_of_index(index):
    guarded_work.step("reading it", index, SECONDS, guarded_work.GIB + index.stat().st_size * 100, ADVICE, guarded_work.WEIGHTS)
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsFault(f"{index}: no JSON ({one_line(error, 100)}): {ADVICE}") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsFault(f'{index}: wanted an object such as {{"weight_map": {{"NAME": "FILE.bin"}}}}: {ADVICE}')
    for name in weight_map.values():
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise WeightsFault(f"{index}: {one_line(repr(name), 80)} is a path, wanted a bare file name: {ADVICE}")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def pickled_files(source):
    """The checkpoint's files, in order."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageFault(f"{source}: no such file or folder")
    if (source / INDEX).is_file():
        return files_of_index(source / INDEX)
    if (source / "pytorch_model.bin").is_file():
        return [source / "pytorch_model.bin"]
    found = sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and p.name != "training_args.bin")
    if len(found) != 1:
        raise UsageFault(f"{source}: wanted one checkpoint, found {[p.name for p in found[:10]]}: name the file")
    return found


def is_dense(value):
    import torch
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def is_weight(name, value):
    return isinstance(name, str) and is_dense(value)


def loaded_from(path, advice=ADVICE, fault=WeightsFault):
    """What the pickle holds, read without running any of it; what cannot be read so is refused by `fault`."""
    import torch
    size = path.stat().st_size
    guarded_work.step("reading it", path, SECONDS + size * SECONDS_A_BYTE, guarded_work.GIB + size * BYTES_A_BYTE, advice, fault.code)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about sparse tensors and old storages: lines beside ours
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001: whatever this one call raises, the file made it do so
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        raise fault(f"{path}: torch.load(weights_only=True) refuses it ({why}): {advice}") from None


def tensors_of(path):
    if not path.is_file():
        raise WeightsFault(f"{path}: no such file, and the index names it: {ADVICE}")
    loaded = loaded_from(path)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise WeightsFault(f"{path}: holds {type(loaded).__name__}, wanted a dictionary of tensors: {ADVICE}")
    strangers = [one_line(repr(name), 40) for name, value in loaded.items() if not is_weight(name, value)]
    if strangers:
        raise WeightsFault(f"{path}: these are no dense tensors: {', '.join(strangers[:10])}: extract the weights first")
    return loaded


def unshared(path, tensors):
    """Contiguous copies; a tensor stored under several names (tied weights) is kept under the first alone."""
    kept, seen = {}, {}
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() > 0 and key in seen:
            print(f"{name}: the same tensor as {seen[key]}, left out")
            continue
        seen[key] = name
        if tensor.numel() * tensor.element_size() > sum(stored.values()):
            raise WeightsFault(f"{path}: {one_line(repr(name), 80)} of shape {tuple(tensor.shape)} repeats the few values that "
                               f"are stored for it: {ADVICE}")
        kept[name] = tensor.clone().contiguous()
    return kept


def convert(files, out, work):
    """Into the folder `work` first: what is in `out` is whole."""
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for target in [*names, WEIGHTS_INDEX]:
        if (out / target).exists():
            raise UsageFault(f"{out / target}: is there already: remove it, or name another --out")
    work.mkdir(parents=True)
    weight_map, total = {}, 0
    for path, target in zip(files, names):
        tensors = unshared(path, tensors_of(path))
        for name, tensor in tensors.items():
            if name in weight_map:
                raise WeightsFault(f"{path}: {one_line(name, 80)} is in {weight_map[name]} too: {ADVICE}")
            weight_map[name] = target
            total += tensor.numel() * tensor.element_size()
        write_weights(tensors, work / target)
        print(f"{path.name}: {len(tensors)} tensors to {out / target}")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (work / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")
        names.append(WEIGHTS_INDEX)
    for target in names:
        os.replace(work / target, out / target)
    work.rmdir()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, metavar="FOLDER|FILE")
    parser.add_argument("--out", type=pathlib.Path, help="where to write (default: beside the source)")
    a = parser.parse_args(arguments)
    out = a.out or (a.source if a.source.is_dir() else a.source.parent)
    unfinished, absent = out / f".convert-{os.getpid()}", guarded_work.absent_folders([out])

    def work():
        files = pickled_files(a.source)
        import safetensors.torch  # noqa: F401
        guarded_work.libraries_are_loaded()
        convert(files, out, unfinished)

    def tidy():
        shutil.rmtree(unfinished, ignore_errors=True)
        guarded_work.remove_empty(absent)

    return guarded_work.answered("convert_pickle", work, tidy)


if __name__ == "__main__":
    sys.exit(main())
