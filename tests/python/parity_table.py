"""Prints the parity table, one Markdown row a family: `LIMBECK_BUILD=build/release python tests/python/parity_table.py`."""

import conftest  # noqa: F401  settings that must stand before transformers is imported

import sys

import model_zoo
import parity_measures
import torch


def row(family: model_zoo.Family) -> str:
    exact = parity_measures.float32_parity(family)
    worst, error = exact.worst_gradient
    half = [parity_measures.half_parity(family, dtype) for dtype in (torch.bfloat16, torch.float16)]
    cells = [family.name, f"{exact.output:.1e}", f"{exact.own_output:.1e}", f"{error:.1e} `{worst}`"]
    cells += [f"{parity.ratio:.3f}" for parity in half] + [f"{parity.gradient_ratio:.3f}" for parity in half]
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    print(
        "| family | float32 output, largest error / largest entry | transformers float32 against its float64 "
        "| worst gradient, relative | bfloat16 ratio | float16 ratio | bfloat16 gradients | float16 gradients |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names or model_zoo.BY_NAME:
        print(row(model_zoo.BY_NAME[name]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
