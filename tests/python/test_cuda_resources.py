"""What every CUDA kernel takes of a GPU, read from the compiled library: no GPU is needed to see a spill."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from limbeck_runner import build_folder

LIBRARY = build_folder() / "lib" / "liblimbeck_cuda.so"
ARCHITECTURES = {"sm_80", "sm_90", "sm_100", "sm_120"}  # A100, H100, B200, RTX 50
REGISTERS = 64  # 1,024 threads of a multiprocessor's 65,536 registers

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="built without CUDA operators")


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str
    registers: int
    stack: int
    local: int


def cuobjdump(*arguments: str) -> str:
    triton = pytest.importorskip("triton", reason="triton's wheel, which carries cuobjdump, is not installed")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, *arguments, LIBRARY], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    found, architecture, name = [], "", ""
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", line):
            found.append(Kernel(architecture, name, *map(int, match.groups())))
    return found


def test_every_architecture_has_every_kernel(kernels):
    names = {a: {k.name for k in kernels if k.architecture == a} for a in sorted({k.architecture for k in kernels})}
    assert names.keys() == ARCHITECTURES
    assert len({frozenset(n) for n in names.values()}) == 1, {a: len(n) for a, n in names.items()}
    operators = {"adamw", "dropout", "gated_activation", "grouped_linear", "head_loss", "norm", "quantized", "resolvent", "rotary", "sampling"}
    assert {o for o in operators if any(f"_{o}_cu_" in n for n in names["sm_90"])} == operators


def test_newer_gpus_can_compile_it_themselves():
    assert re.search(r"compute_80|sm_80\.ptx", cuobjdump("--list-ptx")), "no PTX: nothing runs on what comes after sm_120"


def test_no_kernel_spills_or_starves_its_neighbours(kernels):
    most = max(kernels, key=lambda kernel: kernel.registers)
    print(f"{len(kernels)} kernels, at most {most.registers} registers ({most.name}, {most.architecture})")
    assert [k for k in kernels if k.stack or k.local] == [], "local memory: registers were spilled, or an array is indexed"
    assert [k for k in kernels if k.registers > REGISTERS] == []
