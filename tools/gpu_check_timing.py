"""Times and memory of what runs on a GPU, by its own events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM, FEWEST, MOST = 3, 5, 50
CACHE = 256 << 20  # bytes, several times the second-level cache of any card


def milliseconds(work: Callable[[], object], seconds: float) -> float:
    """The median over as many runs as fit; before each, what the last one left in the cache is pushed out."""
    import torch

    flush = torch.empty(CACHE, dtype=torch.int8, device="cuda")
    for _ in range(WARM):
        work()
    torch.cuda.synchronize()
    taken, until = [], time.monotonic() + seconds
    while len(taken) < FEWEST or (len(taken) < MOST and time.monotonic() < until):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def peak_mib(work: Callable[[], object]) -> float:
    """Of PyTorch's allocator, beyond what was held before; what comes out counts."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return (peak - before) / 2**20


def distance(ours, theirs) -> float:
    """Of two lists of tensors: the largest norm of a difference, as a share of their norm."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        wide = b.double()
        norm = float(wide.norm())
        apart = float((a.double() - wide).norm())
        worst = max(worst, apart / norm if norm else apart)
        if apart != apart:
            return apart
    return worst
