"""Numbers as the report shows them."""

from __future__ import annotations

import math
import statistics


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == int(value) and size < 1e6:
        return str(int(value))
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if size >= 1e4 else f"{value:.4g}"


def bytes_text(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            break
        value /= 1000
    else:
        unit = "TB"
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def shown(name: str, value: float | None) -> str:
    return bytes_text(value) if value is not None and name.endswith("bytes") else number(value)


def mean_and_spread(values: list[float], name: str) -> str:
    text = shown(name, statistics.fmean(values))
    if len(values) > 1:
        spread = statistics.stdev(values)
        text += f" <small>± {bytes_text(spread) if name.endswith('bytes') else f'{spread:.2g}'}</small>"
    return text
