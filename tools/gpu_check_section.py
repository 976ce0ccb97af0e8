"""One section of tools/gpu_check in a process of its own: gpu_check_section.py NAME JOB.json.

NAME is a module gpu_check_NAME.py or the path of a Python file; either has rows(place), a generator of Row. What it yields
goes to standard output, a JSON object a line; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))
from gpu_check_place import Place  # noqa: E402


def section_module(name: str):
    if not name.endswith(".py"):
        return importlib.import_module(f"gpu_check_{name}")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(name: str, job_file: str) -> int:
    job = json.loads(Path(job_file).read_text())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(what: dict) -> None:
        print(json.dumps(what), file=out, flush=True)

    place = Place(job["section"], Path(job["build"]), Path(job["scratch"]), job["dry"], job["card"],
                  time.monotonic() + job["seconds"], say=lambda doing: tell({"doing": doing}), flash_attention_3=job["flash_attention_3"])  # fmt: skip
    for row in section_module(name).rows(place):
        tell({"row": dataclasses.asdict(row)})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
