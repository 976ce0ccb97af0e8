"""A tokenizer's own chat template, a Jinja text from a stranger's file: rendered in a process of its own, whose memory,
time and output are limited. That process is this file, run as a program: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import pathlib
import resource
import select
import subprocess
import sys

SECONDS, MEMORY, CHARACTERS = 10, 1 << 30, 16 << 20  # for one chat; of the process; of one rendered text


class TemplateFault(Exception):
    """Why a template gives no text."""


class Renderer:
    """What the child does."""

    def __init__(self, template: str, specials: dict[str, str]):
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
        environment.globals["raise_exception"] = self._refuse
        # A fixed date: the same input must give the same shards.
        environment.globals["strftime_now"] = lambda form: {"%d %b %Y": "01 Jan 2025"}.get(form, "2025-01-01")
        self._specials, self._template = specials, environment.from_string(template)

    @staticmethod
    def _refuse(message):
        raise TemplateFault(str(message))  # the template's own words

    def _render(self, messages: list[dict], prompt: bool) -> str:
        parts, length = [], 0
        for part in self._template.generate(messages=messages, add_generation_prompt=prompt, **self._specials):
            length += len(part)
            if length > CHARACTERS:
                raise TemplateFault(f"gives more than {CHARACTERS >> 20} million characters for one chat")
            parts.append(part)
        return "".join(parts)

    def spans(self, messages: list[dict]) -> tuple[str, list]:
        """The whole text, and of each turn of the assistant what it adds to the prompt that a generation would start
        from; None where the template rewrites earlier turns."""
        text, spans = self._render(messages, False), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], True)
            after = self._render(messages[: number + 1], False)
            whole = after.startswith(before) and text.startswith(after)
            spans.append([number, len(before), len(after)] if whole else [number, None, None])
        return text, spans


class TemplateProcess:
    """The parent's side. One child renders all chats; after a fault there is none left."""

    def __init__(self, template: str, specials: dict[str, str]):
        self._child = subprocess.Popen([sys.executable, "-I", str(pathlib.Path(__file__).resolve())], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._rest = b""
        self._ask({"template": template, "specials": specials})

    def spans(self, messages: list[dict]) -> tuple[str, list]:
        return tuple(self._ask({"messages": messages}))

    def close(self):
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()

    def _ask(self, question: dict):
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            answer = json.loads(self._line())
        except (BrokenPipeError, EOFError):
            self.close()
            raise TemplateFault(f"ended its process, which may take {MEMORY >> 30} GiB of memory") from None
        if "fault" in answer:
            raise TemplateFault(answer["fault"])
        return answer["value"]

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            if not select.select([self._child.stdout], [], [], SECONDS)[0]:
                self.close()
                raise TemplateFault(f"was not done after {SECONDS} s")
            part = self._child.stdout.read1(1 << 20)
            if not part:
                raise EOFError
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        return line


def serve():
    import jinja2  # noqa: F401  what it loads is not the template's to pay for
    import jinja2.ext  # noqa: F401
    import jinja2.sandbox  # noqa: F401
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    renderer = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "template" in question:
                renderer, value = Renderer(question["template"], question["specials"]), None
            else:
                value = renderer.spans(question["messages"])
            answer = json.dumps({"value": value})
        except TemplateFault as fault:
            answer = json.dumps({"fault": " ".join(str(fault).split())[:300]})
        except MemoryError:
            answer = json.dumps({"fault": f"wants more than {MEMORY >> 30} GiB of memory"})
        except Exception as error:  # whatever a stranger's template does
            line = getattr(error, "lineno", None)
            text = f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
            answer = json.dumps({"fault": " ".join(text.split())[:300]})
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
