"""Where a report's page is written: whole under its name, and never over what it was made from."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Callable, TypeVar

import report_charts as charts
from guarded_work import GIB, answered, step
from report_runs import USAGE, ReportError

IO = 6  # exit code, as the program's
IN_A_RUN = ("sweep.json", "profile.json")  # a run's folder has the name then


def named(path: Path) -> str:
    """As short as tells files of one name in two folders apart."""
    folder = path.resolve().parent.name
    return f"{folder}/{path.stem}" if path.name in IN_A_RUN and folder else path.stem


def write_whole(path: Path, text: str) -> None:
    """Under its name only when it is complete."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise ReportError(IO, f"{path}: cannot be written: {error.strerror}; choose another with --output FILE")


def page_of_files(options: argparse.Namespace, read: list[Path], page: Callable[[], str]) -> None:
    """Of --output FILE, or beside the first file that was read, and named as it is."""
    output = options.output or read[0].with_suffix(".html")
    if output.exists() and (not output.is_file() or any(output.samefile(path) for path in read)):
        raise ReportError(USAGE, f"{output}: is no file that can be replaced: choose another with --output FILE")
    step("making a page of it", ", ".join(map(str, read)), 60, 2 * GIB, "leave some of it out")
    write_whole(output, page())
    print(output)


Read = TypeVar("Read")


def main_of_a_page(program: str, description: str, kind: str, what: str, title: Callable[[Path], str], read: Callable[[Path], Read],
                   body: Callable[[Read], str], arguments: list[str]) -> int:  # fmt: skip
    """Of a program that makes a page of one file; `what` says which to name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, metavar=f"{kind}.json")
    parser.add_argument("--output", type=Path, help=f"default: {kind}.html")
    parser.add_argument("--title", help="default: the name of the file")
    options = parser.parse_args(arguments)

    def report() -> None:
        step("reading", options.result, 30, GIB, what)
        result = read(options.result)
        heading = options.title or f"Limbeck: {title(options.result)}"
        page_of_files(options, [options.result], lambda: charts.document(heading, body(result)))

    return answered(program, report)
