"""The other side of template_child.py: one process for all chats, with limits, and what it says when it ends."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys

from token_shards import DataFault

CHILD = pathlib.Path(__file__).resolve().with_name("template_child.py")
MEMORY = 1 << 30
SECONDS, SECONDS_A_CHARACTER = 5.0, 5e-5  # of processor time: at first, and for every byte of a chat
CHARACTERS, CHARACTERS_A_CHARACTER = 1_000_000, 8  # of output
OUT_OF_MEMORY = 3  # the child's exit code
INSTEAD = "use --chat-template builtin"


class TemplateProcess:
    def __init__(self, where: str, template: str, specials: dict[str, str]):
        self._where = where
        # No environment: what is in it is no template's business.
        command = [sys.executable, "-I", str(CHILD)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         env={})
        answer = self._asked({"template": template, "specials": specials, "memory": MEMORY, "seconds": SECONDS,
                              "seconds_a_character": SECONDS_A_CHARACTER}, where)
        if "refused" in answer:
            raise DataFault(f"{where}: the chat template cannot be used: {answer['refused']}: {INSTEAD}")

    def _asked(self, question: dict, where: str) -> dict:
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            return json.loads(line)
        ended = self._process.wait()
        if ended == -signal.SIGPROF:
            raise DataFault(f"{where}: the tokenizer's chat template ({self._where}) takes more than {SECONDS:.0f} s of "
                            f"processor time, and {SECONDS_A_CHARACTER * 1e6:.0f} s for a million characters: {INSTEAD}")
        if ended < 0 or ended == OUT_OF_MEMORY:
            how = f" by signal {-ended}" if ended < 0 else ""
            raise DataFault(f"{where}: the tokenizer's chat template ({self._where}) ended the process that renders it{how}; "
                            f"it may have {MEMORY >> 20} MiB: {INSTEAD}")
        raise RuntimeError(f"{where}: template_child.py ended with code {ended}")

    def rendered(self, messages: list[dict], where: str) -> tuple[str, list[tuple[int, int, int]]]:
        """The chat as text; for every turn of the assistant its number, first character and the one behind its last."""
        most = CHARACTERS + CHARACTERS_A_CHARACTER * sum(len(message["content"]) for message in messages)
        answer = self._asked({"messages": messages, "most": most}, where)
        if "refused" not in answer:
            return answer["text"], [tuple(span) for span in answer["spans"]]
        place = where if answer.get("message") is None else f"{where}: message {answer['message']}"
        verb = "" if "message" in answer else "refuses this chat: "
        raise DataFault(f"{place}: the tokenizer's chat template {verb}{answer['refused']}: {INSTEAD}")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
