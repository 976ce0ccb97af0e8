"""torchao's quantized linears beside ours, interleaved in one process: PYTHONPATH=DIR torchao_peer.py [rounds] [rows,rows].

torchao is none of our requirements: pip install --target DIR --no-deps torchao. Prints the median milliseconds of each and,
for each pair of the same kind, the median over the rounds of theirs / ours.
"""

from __future__ import annotations

import copy
import os
import pathlib
import statistics
import sys
import time

import torch
import torchao.prototype.quantization.int4 as ao_int4
import torchao.quantization as ao

BUILD = pathlib.Path(os.environ.get("LIMBECK_BUILD", pathlib.Path(__file__).parents[2] / "build" / "release"))
torch.ops.load_library(str(BUILD / "lib" / "liblimbeck_kernels.so"))
ops = torch.ops.limbeck

PEERS = {
    "int8 dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(),
    "int8": lambda: ao.Int8WeightOnlyConfig(),
    "int4": lambda: ao_int4.PrototypeInt4WeightOnlyConfig(group_size=128),
}


def ours(kind: str, weight: torch.Tensor):
    form = kind.replace(" ", "-")
    parts = ops.quantize_weight(weight.float(), form)
    return lambda x: ops.quantized_linear(x, parts, form, *weight.shape)


def seconds(work, x: torch.Tensor) -> float:
    # One thread is timed by its own clock: others on the machine do not count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work(x)
    return clock() - start


def measure(dtype: torch.dtype, rows: int, out: int, width: int, rounds: int) -> None:
    linear = torch.nn.Linear(width, out, bias=False, dtype=dtype)
    x = torch.randn(rows, width, dtype=dtype)
    for kind, config in PEERS.items():
        mine = ours(kind, linear.weight.detach())
        try:
            peer = copy.deepcopy(linear)
            ao.quantize_(peer, config())
            theirs_once = peer(x)
        except Exception as error:  # what of theirs this processor lacks is part of the answer
            print(f"{kind:13} torchao: {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        apart = (theirs_once.float() - mine(x).float()).norm() / theirs_once.float().norm()
        times = [(seconds(mine, x), seconds(peer, x), seconds(linear, x)) for _ in range(rounds)]
        mid = [1e3 * statistics.median(column) for column in zip(*times)]
        ratio = statistics.median(theirs / us for us, theirs, _ in times)
        print(f"{kind:13} {str(dtype)[6:]:9} {rows:4} rows {out} x {width}: ours {mid[0]:9.3f} ms  torchao {mid[1]:9.3f} ms  "
              f"torch's float linear {mid[2]:9.3f} ms  torchao / ours {ratio:6.2f}  results apart {apart:.4f}", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    rows = [int(count) for count in (sys.argv[2] if len(sys.argv) > 2 else "1,16,128").split(",")]
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for count in rows:
                for out, width in ((4096, 4096), (11008, 4096), (1024, 1024)):
                    measure(dtype, count, out, width, rounds)


if __name__ == "__main__":
    main()
