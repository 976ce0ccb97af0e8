"""A chat as text, with the spans that the assistant wrote: the only ones that are learned."""

from __future__ import annotations

import dataclasses

from token_shards import DataFault
from token_shards.chat_template import TemplateFault, TemplateProcess

BUILTIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclasses.dataclass
class Segment:
    """A text that is tokenized in one go, and whether the end-of-sequence token follows it."""

    text: str
    spans: list[tuple[int, int]] | None = None  # character ranges that are targets; None: all of it
    ends: bool = False
    end_is_target: bool = True


def builtin_segments(messages: list[dict], learned_from: int = 0) -> list[Segment]:
    """System: ...\n\nUser: ...\n\nAssistant: ... <end>, plain text in any vocabulary; one segment an assistant turn.
    Turns before message `learned_from` are no targets."""
    segments, text = [], ""
    for number, message in enumerate(messages):
        text += BUILTIN_NAMES[message["role"]] + ":"
        begin = len(text)
        text += " " + message["content"]
        if message["role"] == "assistant":
            learned = number >= learned_from
            segments.append(Segment(text, [(begin, len(text))] if learned else [], ends=True, end_is_target=learned))
            text = ""
        else:
            text += "\n\n"
    if text:  # a chat that ends with a question
        segments.append(Segment(text, [], ends=True, end_is_target=False))
    return segments


class OwnTemplate:
    """The tokenizer's own template, of the folder `where`. `ends`: texts that may end a turn, its special tokens."""

    def __init__(self, template: str, specials: dict[str, str | None], where: str, ends: list[str]):
        self._ends = tuple(ends)
        try:
            self._process = TemplateProcess(template, {key: value for key, value in specials.items() if value is not None})
        except TemplateFault as fault:
            raise DataFault(f"{where}: the chat template cannot be used: {fault}: use --chat-template builtin") from None

    def segments(self, messages: list[dict], where: str, learned_from: int = 0) -> list[Segment]:
        """A turn of the assistant is what the template adds to the prompt that a generation would start from, up to the
        token that ends the turn: the line break that some templates write behind it is said by nobody."""
        try:
            text, found = self._process.spans(messages)
        except TemplateFault as fault:
            raise DataFault(f"{where}: the tokenizer's chat template refuses this chat: {fault}: use --chat-template "
                            "builtin") from None
        spans = []
        for number, begin, end in found:
            if begin is None:
                raise DataFault(f"{where}: message {number}: the tokenizer's chat template rewrites earlier turns, so this "
                                "one cannot be told apart: use --chat-template builtin")
            if number >= learned_from:
                spans.append((begin, begin + len(self._turn(text[begin:end]))))
        return [Segment(self._turn(text), spans)]

    def _turn(self, text: str) -> str:
        bare = text.rstrip()
        return bare if self._ends and bare.endswith(self._ends) else text
