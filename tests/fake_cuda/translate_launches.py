"""translate_launches.py FILE.cu OUT.cpp: the file as plain C++ on tests/fake_cuda/toolkit/.

A launch  kernel<T><<<grid, block, shared, stream>>>(arguments)  becomes a call of limbeck::fake_cuda::launch with a closure
that holds copies of the arguments, and  extern __shared__ T name[]  a pointer to the block's shared memory. The rest is
left as it is; messages name the lines of FILE.cu.
"""

import pathlib
import re
import sys

OPENING, CLOSING = "([{", ")]}"
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(.+?)\s*\b(\w+)\s*\[\s*\]\s*;")


def start_of_callee(text: str, end: int) -> int:
    """Where the name before `end` begins: identifiers, :: and template arguments."""
    at, depth = end, 0
    while at > 0:
        one = text[at - 1]
        if one == ">":
            depth += 1
        elif one == "<":
            depth -= 1
        elif depth == 0 and not (one.isalnum() or one in "_:"):
            break
        at -= 1
    return at


def end_of_group(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in OPENING) - (text[at] in CLOSING)
        if depth == 0:
            return at + 1
    raise SystemExit(f"no end of the arguments: {text[start : start + 60]!r}")


def divided(text: str) -> list[str]:
    parts, depth = [""], 0
    for one in text:
        depth += (one in OPENING) - (one in CLOSING)
        if one == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += one
    return [part.strip() for part in parts]


def translated(text: str) -> str:
    text = DYNAMIC_SHARED.sub(r"auto* \2 = static_cast<\1*>(::limbeck::fake_cuda::dynamic_shared());", text)
    out, at = "", 0
    while (launch := text.find("<<<", at)) >= 0:
        start, middle = start_of_callee(text, launch), text.index(">>>", launch)
        arguments = re.compile(r"\s*").match(text, middle + 3).end()
        end = end_of_group(text, arguments)
        given = divided(text[launch + 3 : middle])
        grid, block, shared, stream = given + ["0", "nullptr"][len(given) - 2 :]
        kernel = text[start:launch]
        name = re.match(r"[\w:]+", kernel).group()
        out += text[at:start]
        of_thread = f"[=] {{ {kernel}{text[arguments:end]}; }}"
        out += f'::limbeck::fake_cuda::launch("{name}", {grid}, {block}, {shared}, {stream}, {of_thread})'
        at = end
    return out + text[at:]


if __name__ == "__main__":
    source, target = map(pathlib.Path, sys.argv[1:])
    target.write_text(f'#include <cuda_runtime_api.h>\n#line 1 "{source}"\n{translated(source.read_text())}')
