"""A document as texts to tokenize, with the spans that are learned: of a chat what the assistant wrote."""

from __future__ import annotations

import dataclasses

from token_shards.documents import Document
from token_shards.template_process import TemplateProcess

BUILTIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclasses.dataclass
class Segment:
    """A text that is tokenized in one go, and whether the end-of-sequence token follows it."""

    text: str
    spans: list[tuple[int, int]] | None = None  # character ranges that are targets; None: all of it
    ends: bool = False
    end_is_target: bool = True


def plain_segments(document: Document, everything: bool) -> list[Segment]:
    """A text, of which what stands behind its prompt is learned."""
    if not document.text:
        return []
    prompt = 0 if everything else document.prompt
    spans = [(prompt, len(document.text))] if prompt else None
    return [Segment(document.text, spans, ends=True)]


def builtin_segments(messages: list[dict], prompt: int = 0, everything: bool = False) -> list[Segment]:
    """System: ...\n\nUser: ...\n\nAssistant: ... <end>, plain text in any vocabulary; one segment an assistant turn."""
    segments, text = [], ""
    for number, message in enumerate(messages):
        text += BUILTIN_NAMES[message["role"]] + ":"
        begin = len(text)
        text += " " + message["content"]
        if message["role"] == "assistant":
            learned = number >= prompt or everything
            spans = None if everything else [(begin, len(text))] if learned else []
            segments.append(Segment(text, spans, ends=True, end_is_target=learned))
            text = ""
        else:
            text += "\n\n"
    if text:  # a chat that ends with a question
        segments.append(Segment(text, None if everything else [], ends=True, end_is_target=everything))
    return segments


class OwnTemplate:
    """The tokenizer's own template. `specials`: the texts of its special tokens."""

    def __init__(self, where: str, template: str, variables: dict[str, str], specials: list[str]):
        self._process = TemplateProcess(where, template, variables)
        self._specials = tuple(specials)

    def _said(self, text: str) -> str:
        """Without the line break that some templates write behind the special token that ends a turn: nobody said it."""
        bare = text.rstrip()
        return bare if self._specials and bare.endswith(self._specials) else text

    def segments(self, document: Document, everything: bool) -> list[Segment]:
        text, turns = self._process.rendered(document.messages, document.where)
        spans = [(begin, begin + len(self._said(text[begin:end]))) for number, begin, end in turns if number >= document.prompt]
        return [Segment(self._said(text), None if everything else spans)]
