"""Rows of a gpu_check: one JSON file that is whole after every row, one table, and sections that cannot hang."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

BAD = ("failed", "over time")


class Report:
    def __init__(self, folder: Path, about: dict):
        self.folder, self.about, self.rows = folder, about, []
        folder.mkdir(parents=True, exist_ok=True)
        self._write("gpu_check.json", self._json())

    def add(self, section: str, name: str, state: str, **figures) -> None:
        row = dict(section=section, name=name, state=state, **figures)
        self.rows.append(row)
        self._write("gpu_check.json", self._json())
        told = ", ".join(f"{key} {shown(value)}" for key, value in figures.items())
        print(f"[{section}] {name}: {state}{' (' + told + ')' if told else ''}", flush=True)

    def finish(self) -> None:
        self._write("gpu_check.md", self.table() + "\n")

    def failed(self) -> list[dict]:
        return [row for row in self.rows if row["state"] in BAD]

    def table(self) -> str:
        where = "emulated device: nothing is measured" if self.about.get("dry_run") else self.card()
        lines = [f"{self.about['date']}, {where}", "", "| section | what | state | figures |", "|---|---|---|---|"]
        for row in self.rows:
            figures = {key: value for key, value in row.items() if key not in ("section", "name", "state")}
            told = "; ".join(f"{key} {shown(value)}" for key, value in figures.items()).replace("|", "/")
            lines.append(f"| {row['section']} | {row['name']} | {row['state']} | {told} |")
        return "\n".join(lines)

    def card(self) -> str:
        return next((str(row["card"]) for row in self.rows if row.get("card")), "no card named")

    def _json(self) -> str:
        return json.dumps(dict(self.about, rows=self.rows), indent=1) + "\n"

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        beside = path.with_name(name + ".new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_section(report: Report, name: str, command: list[str], seconds: float, environment: dict) -> None:
    """Rows are the JSON lines that the command prints; what it prints besides is kept for the row of its failure."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    said, rest, over = [], b"", False
    try:
        while True:
            left = began + seconds - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                over = True
                break
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                take(report, name, line.decode(errors="replace"), said)
    finally:
        # The whole group: a killed command leaves nobody on the device.
        try:
            os.killpg(process.pid, signal.SIGKILL if over else signal.SIGTERM)
        except ProcessLookupError:
            pass
        process.wait()
    if over:
        report.add(name, "the section", "over time", limit_s=seconds, said=last(said))
    elif process.returncode != 0:
        report.add(name, "the section", "failed", exit=process.returncode, said=last(said))


def take(report: Report, section: str, line: str, said: list[str]) -> None:
    if line.startswith("{"):
        try:
            row = json.loads(line)
            report.add(section, row.pop("name"), row.pop("state"), **row)
            return
        except (ValueError, KeyError, TypeError):
            pass
    said.append(line)


def last(said: list[str]) -> str:
    return " / ".join(line.strip() for line in said if line.strip())[-600:]
