"""Section machine: the card and its clocks, versions, and which of the libraries that came along are found."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_check_place import Place, importable, last_line, library_folders
from gpu_check_rows import FAILED, PASSED, SEEN, SKIPPED, Row

FIELDS = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
PACKAGES = ("transformers", "peft", "safetensors", "triton", "liger_kernel", "cut_cross_entropy", "bitsandbytes", "google_crc32c")
LOADED = ("bin/limbeck", "bin/kernels_test", "lib/liblimbeck_kernels.so", "lib/liblimbeck_cuda.so", "lib/liblimbeck_nccl.so")


def clocks(place: Place) -> Row:
    if place.dry:
        return place.row("card and clocks", SKIPPED, "no GPU in a dry run")
    done = subprocess.run(["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv"], capture_output=True, text=True, timeout=30)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or len(lines) < 2:
        return place.row("card and clocks", FAILED, f"nvidia-smi: exit {done.returncode}: {last_line(done.stdout + done.stderr)}")
    named = zip(lines[0].split(", "), lines[1].split(", "))
    return place.row("card and clocks", SEEN, "; ".join(f"{name.split(' [')[0]} {value}" for name, value in named))


def torch_sees(place: Place) -> Row:
    import torch

    note = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"
    if place.dry:
        return place.row("torch", SEEN, note, device="CPU")
    if not torch.cuda.is_available():
        return place.row("torch", FAILED, f"{note}: torch.cuda.is_available() is false; wanted a torch built for this driver")
    about = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    note += f", compute capability {about.major}.{about.minor}, {about.multi_processor_count} multiprocessors"
    return place.row("torch", SEEN, f"{note}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def packages(place: Place) -> Row:
    found = []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            version = "there" if importable(name) else "not found"
        found.append(f"{name} {version}")
    return place.row("Python packages", SEEN, ", ".join(found), device="CPU")


def tools(place: Place) -> Row:
    names = ("nvcc", "compute-sanitizer", "ncu", "nsys", "cuobjdump")
    return place.row("CUDA tools", SEEN, ", ".join(f"{name} {shutil.which(name) or 'not found'}" for name in names), device="CPU")


def missing(place: Place, file: Path) -> list[str]:
    done = place.run(["ldd", file], "cuda" if not place.dry else "cpu", timeout=30)
    return [line.split("=>")[0].strip() for line in done.stdout.splitlines() if "not found" in line]


def libraries(place: Place) -> Iterator[Row]:
    folders = ", ".join(map(str, library_folders(place.build)))
    yield place.row("folders of libraries", SEEN, f"LD_LIBRARY_PATH = {folders}", device="CPU")
    for name in LOADED:
        file = place.build / name
        if not file.is_file():
            optional = "kernels.so" not in name and name != "bin/limbeck"
            yield place.row(name, SKIPPED if optional else FAILED, f"not found: {file}", device="CPU")
        elif lacks := missing(place, file):
            note = f"not found: {', '.join(lacks)}; carry the Debian libraries and put their folder into LD_LIBRARY_PATH"
            yield place.row(name, FAILED, note, device="CPU")
        else:
            yield place.row(name, PASSED, "every library that it names is found", device="CPU")


def rows(place: Place) -> Iterator[Row]:
    for name, what in (("card and clocks", clocks), ("torch", torch_sees), ("Python packages", packages), ("CUDA tools", tools)):
        place.say(name)
        try:
            yield what(place)
        except (OSError, ImportError, RuntimeError, subprocess.SubprocessError) as error:
            yield place.row(name, FAILED, f"{type(error).__name__}: {error}")
    place.say("libraries")
    yield from libraries(place)
    place.say("limbeck list")
    done = place.run([place.program("limbeck"), "list"], timeout=60)
    good = done.returncode == 0
    yield place.row("limbeck starts", PASSED if good else FAILED, "" if good else f"exit {done.returncode}: {last_line(done.stderr)}", device="CPU")
