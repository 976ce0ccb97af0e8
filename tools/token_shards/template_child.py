"""The process that renders a tokenizer's own chat template: a program of a stranger, so it runs here, where it can spend
little time and little memory. Started by template_process.py; a line of JSON in, a line of JSON out. Of this machine it
sees what jinja2's immutable sandbox lets through, no environment, and no file may be written.

First comes {"template", "specials", "memory", "seconds", "seconds_a_character"}, answered by {} or {"refused": why};
then {"messages", "most"} for each chat, answered by {"text", "spans"}, of the assistant's turns, or {"refused", "message"}.
"""

import json
import os
import random
import resource
import signal
import sys

import jinja2.debug  # noqa: F401: all of what is needed, before memory is limited
from jinja2 import exceptions, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT_OF_MEMORY = 3  # exit code: a chat that cannot even be read


class Refused(Exception):
    def __init__(self, why, message=None):
        super().__init__(why)
        self.message = message


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %}, by which templates mark what is learned: shown as it stands."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class OwnWords(exceptions.TemplateError):
    """What the template itself says."""


def raise_exception(message):
    raise OwnWords(str(message))


def strftime_now(form):
    """A fixed date: the same input must give the same shards."""
    return {"%d %b %Y": "01 Jan 2025"}.get(form, "2025-01-01")


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def why(error):
    """One line on any exception that a template can raise, all of which are its own."""
    if isinstance(error, MemoryError):
        return f"wants more than {resource.getrlimit(resource.RLIMIT_AS)[0] >> 30} GiB of memory"
    if isinstance(error, RecursionError):
        return "calls itself without an end"
    text = " ".join(str(error).split())[:300]
    line = f" (line {error.lineno})" if isinstance(error, exceptions.TemplateSyntaxError) else ""
    return text if isinstance(error, OwnWords) else f"{type(error).__name__}: {text}{line}"


class Renderer:
    def __init__(self, template, specials):
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=[loopcontrols, GenerationTag])
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = strftime_now
        self._specials = specials
        self._template = environment.from_string(template)

    def _rendered(self, messages, prompt, most):
        random.seed(0)  # jinja2 has a filter that draws
        parts, length = [], 0
        for part in self._template.generate(messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                                            **self._specials):
            parts.append(part)
            length += len(part)
            if length > most:
                raise Refused(f"writes {length:,} characters, wanted at most a million characters and 8 for each of the chat's")
        text = "".join(parts)
        text.encode()  # half a surrogate pair is refused
        return text

    def rendered_with_turns(self, messages, most):
        """A turn of the assistant is what the template adds to the prompt that a generation would start from."""
        text, spans = self._rendered(messages, False, most), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:number], True, most)
            after = text if number + 1 == len(messages) else self._rendered(messages[: number + 1], False, most)
            if not after.startswith(before) or not text.startswith(after):
                raise Refused("rewrites earlier turns, so this one cannot be told apart", number)
            spans.append((number, len(before), len(after)))
        return text, spans


def attempted(work):
    try:
        return work()
    except Refused as refused:
        return {"refused": str(refused), "message": refused.message}
    except Exception as error:  # noqa: BLE001: whatever is raised here, the template raised it
        return {"refused": why(error)}


class Clock:
    """Processor time that the template may still use: some at first, and more with every chat. Ends the process."""

    def __init__(self, seconds, a_character):
        self._left, self._a_character = seconds, a_character
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def running(self, work, characters=0):
        self._left += characters * self._a_character
        signal.setitimer(signal.ITIMER_PROF, max(self._left, 1e-3))
        answer = work()
        self._left = signal.setitimer(signal.ITIMER_PROF, 0)[0]
        return answer


def main():
    say, first = sys.stdout.buffer, json.loads(sys.stdin.buffer.readline())
    clock = Clock(first["seconds"], first["seconds_a_character"])
    resource.setrlimit(resource.RLIMIT_AS, (first["memory"], first["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer = None

    def start():
        nonlocal renderer
        renderer = Renderer(first["template"], first["specials"])
        return {}

    def render(chat):
        text, spans = renderer.rendered_with_turns(chat["messages"], chat["most"])
        return {"text": text, "spans": spans}

    say.write(json.dumps(clock.running(lambda: attempted(start))).encode() + b"\n")
    say.flush()
    for line in sys.stdin.buffer:
        chat = json.loads(line)
        answer = clock.running(lambda chat=chat: attempted(lambda: render(chat)), len(line))
        say.write(json.dumps(answer).encode() + b"\n")
        say.flush()


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
