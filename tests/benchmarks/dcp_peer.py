"""dcp_peer.py: torch.distributed.checkpoint behind a pipe, so that limbeck_bench can time it beside Limbeck.

Keeps the tensors of the safetensors files it is started with. Each line of standard input, `SYNC THREADS FOLDER`, saves
them once (SYNC: 1 as the writer comes, 0 without fsync) and is answered by the seconds of the save alone.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file


def main(files: list[str]) -> None:
    # `clone`: as a trainer holds them, each in memory of its own.
    state = {f"{number}.{name}": tensor.clone() for number, file in enumerate(files) for name, tensor in load_file(file).items()}
    print(f"ready torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        sync, threads, folder = line.rstrip("\n").split(" ", 2)
        writer = dcp.FileSystemWriter(folder, sync_files=sync == "1", thread_count=int(threads))
        begin = time.perf_counter()
        dcp.save(state, storage_writer=writer, no_dist=True)
        print(f"{time.perf_counter() - begin:.6f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
