"""Section operators: torch.ops.limbeck.* from Python beside PyTorch, Liger and cut-cross-entropy: values, times, memory.

In a dry run the same code runs on the CPU at tiny sizes, without a clock: values are compared, nothing is timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import gpu_check_rows as kept
from gpu_check_cards import card_named
from gpu_check_place import Place
from gpu_check_rows import FAILED, MEASURED, PASSED, SKIPPED, Row

SECONDS = 1.0  # of one contender's runs that are timed


def load_operators(place: Place) -> str:
    """The device that they are on now."""
    import torch

    torch.ops.load_library(str(place.build / "lib" / "liblimbeck_kernels.so"))
    if place.dry:
        torch.set_num_threads(place.threads)
        return "cpu"
    torch.cuda.init()
    torch.ops.load_library(str(place.build / "lib" / "liblimbeck_cuda.so"))
    return "cuda"


def compared(case, who: str, ours: list) -> str:
    """What is wrong with our values beside theirs, or nothing."""
    from gpu_check_timing import distance

    theirs = case.contenders[who]()
    apart = distance(ours, theirs)
    return "" if apart <= case.tolerance else f"{apart:.1e} from {who}, allowed {case.tolerance:.0e}"


def measured(place: Place, case, ours_name: str) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Milliseconds and MiB by contender, and who could not run: a peer that fails is no fault of ours."""
    from gpu_check_timing import milliseconds, peak_mib

    taken, peaks, notes = {}, {}, []
    for who, work in case.contenders.items():
        place.say(f"{case.name}: {who}")
        try:
            peaks[who] = peak_mib(work)
            taken[who] = milliseconds(work, SECONDS)
        except Exception as error:  # noqa: BLE001: a stranger's kernel may raise anything
            if who == ours_name:
                raise
            notes.append(f"{who} failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
    return taken, peaks, notes


def one(place: Place, device: str, name: str) -> Row:
    from gpu_check_operator_cases import CASES, OURS, Maker

    case = CASES[name](Maker(place.dry, device, place.flash_attention_3))
    ours = [result.clone() for result in case.contenders[OURS]()]
    wrong = list(filter(None, (compared(case, who, ours) for who in case.alike)))
    del ours
    agreement = f"values within {case.tolerance:.0e} of those of {', '.join(case.alike)}" if case.alike else "values not compared"
    agreement += f"; {case.note}" if case.note else ""
    where = "CPU, tiny sizes" if place.dry else place.card
    if wrong:
        return place.row(case.name, FAILED, "; ".join(wrong), device=where, feature=kept.PYTHON_OPERATORS)
    if place.dry:
        return place.row(case.name, PASSED, f"{agreement}; not timed", device=where, feature=kept.PYTHON_OPERATORS)
    taken, peaks, notes = measured(place, case, OURS)
    card = card_named(place.card)
    floor = 1e3 * card.floor_seconds(case.flops, case.moved, case.dtype) if card else None
    notes = [agreement, f"{case.ways}, {case.flops / 1e12:.3g} TFLOP, {case.moved / 1e9:.3g} GB", *notes]
    notes += [f"peak MiB of {who} {peak:.0f}" for who, peak in peaks.items() if who != OURS]
    notes += [] if card else [f"no figures of {place.card} in gpu_check_cards.py: no share of a roofline"]
    return place.row(case.name, MEASURED, "; ".join(notes), device=where, feature=kept.PYTHON_OPERATORS, value=taken[OURS], unit="ms",
                     peers={who: ms for who, ms in taken.items() if who != OURS}, roofline=floor / taken[OURS] if floor else None,
                     peak_mib=peaks[OURS])  # fmt: skip


def rows(place: Place) -> Iterator[Row]:
    place.say("loading the operators")
    device = load_operators(place)
    from gpu_check_operator_cases import CASES, Unavailable

    import torch

    for name in CASES:
        place.say(name)
        if place.left() < 15:
            yield place.row(name, SKIPPED, f"{place.left():.0f} s are left of this section's time", feature=kept.PYTHON_OPERATORS)
            continue
        began = time.monotonic()
        try:
            row = one(place, device, name)
        except Unavailable as reason:
            row = place.row(name, SKIPPED, str(reason), feature=kept.PYTHON_OPERATORS)
        except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
            said = str(error).splitlines() or [""]
            row = place.row(name, FAILED, f"{type(error).__name__}: {said[0][:240]}", feature=kept.PYTHON_OPERATORS)
        row.note += f" ({time.monotonic() - began:.1f} s)"
        yield row
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
