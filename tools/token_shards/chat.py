"""A chat as text, with the spans that the assistant wrote: the only ones that are learned."""

from __future__ import annotations

import dataclasses
import json

from token_shards import DataFault

BUILTIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclasses.dataclass
class Segment:
    """A text that is tokenized in one go, and whether the end-of-sequence token follows it."""

    text: str
    spans: list[tuple[int, int]] | None = None  # character ranges that are targets; None: all of it
    ends: bool = False
    end_is_target: bool = True


def builtin_segments(messages: list[dict]) -> list[Segment]:
    """System: ...\n\nUser: ...\n\nAssistant: ... <end>, plain text in any vocabulary; one segment an assistant turn."""
    segments, text = [], ""
    for message in messages:
        text += BUILTIN_NAMES[message["role"]] + ":"
        begin = len(text)
        text += " " + message["content"]
        if message["role"] == "assistant":
            segments.append(Segment(text, [(begin, len(text))], ends=True))
            text = ""
        else:
            text += "\n\n"
    if text:  # a chat that ends with a question
        segments.append(Segment(text, [], ends=True, end_is_target=False))
    return segments


class OwnTemplate:
    """The tokenizer's own template, a Jinja text from a file: rendered in a sandbox."""

    def __init__(self, template: str, specials: dict[str, str | None]):
        from jinja2 import exceptions
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
        environment.globals["raise_exception"] = self._refuse
        # A fixed date: the same input must give the same shards.
        environment.globals["strftime_now"] = lambda form: {"%d %b %Y": "01 Jan 2025"}.get(form, "2025-01-01")
        self._faults = exceptions.TemplateError
        self._specials = {key: value for key, value in specials.items() if value is not None}
        self._template = environment.from_string(template)

    @staticmethod
    def _refuse(message):
        from jinja2.exceptions import TemplateError
        raise TemplateError(message)

    def _render(self, messages: list[dict], prompt: bool, where: str) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=prompt, **self._specials)
        except self._faults as error:
            raise DataFault(f"{where}: the tokenizer's chat template refuses this chat: {error}: use --chat-template "
                            "builtin") from None

    def segments(self, messages: list[dict], where: str) -> list[Segment]:
        """A turn of the assistant is what the template adds to the prompt that a generation would start from."""
        text, spans = self._render(messages, False, where), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], True, where)
            after = self._render(messages[: number + 1], False, where)
            if not after.startswith(before) or not text.startswith(after):
                raise DataFault(f"{where}: message {number}: the tokenizer's chat template rewrites earlier turns, so this "
                                "one cannot be told apart: use --chat-template builtin")
            spans.append((len(before), len(after)))
        return [Segment(text, spans)]
