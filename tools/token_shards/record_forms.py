"""The forms in which others keep texts to learn from: which keys belong together, and what of them is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from token_shards import DataFault

KEYS = ("prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "conversations", "conversation")
WANTED = ("'prompt' with 'completion', 'prompt' with 'chosen' (a preference: its chosen side is learned), 'instruction' with "
          "'output' and perhaps 'input', or 'conversations'")


@dataclasses.dataclass
class Form:
    """A text, learned from a character on, or a chat, learned from a message on."""

    name: str
    text: str = ""
    messages: list[dict] | None = None
    learned_from: int = 0


def recognised(record: dict, where: str, messages_of: Callable[[list, str], list[dict]]) -> Form | None:
    """`messages_of`: checks a list of messages. None: no form that is known here."""
    if "completion" in record and "prompt" in record:
        return _answered(record["prompt"], record["completion"], "prompt and completion", where, messages_of)
    if "chosen" in record:
        return _preference(record, where, messages_of)
    if "instruction" in record and "output" in record:
        return _instruction(record, where)
    for key in ("conversations", "conversation"):
        if isinstance(record.get(key), list):
            return Form(key, messages=messages_of(record[key], where))
    return None


def _texts(record: dict, keys: tuple[str, ...], where: str) -> list[str]:
    for key in keys:
        if not isinstance(record.get(key), str):
            raise DataFault(f"{where}: {key!r} is {type(record.get(key)).__name__}, wanted a text")
    return [record[key] for key in keys]


def _answered(prompt, answer, name: str, where: str, messages_of) -> Form:
    """A prompt and what follows it: two texts, two lists of messages, or a text asked and messages that answer."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return Form(name, text=prompt + answer, learned_from=len(prompt))
    if isinstance(prompt, str) and isinstance(answer, list):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise DataFault(f"{where}: {name} are {type(prompt).__name__} and {type(answer).__name__}, wanted two texts or two "
                        "lists of messages")
    before, after = messages_of(prompt, where), messages_of(answer, where)
    return Form(name, messages=before + after, learned_from=len(before))


def _preference(record: dict, where: str, messages_of) -> Form:
    chosen, rejected, prompt, name = record["chosen"], record.get("rejected"), record.get("prompt"), "chosen"
    if isinstance(chosen, list):
        whole, other = messages_of(chosen, where), messages_of(rejected, where) if isinstance(rejected, list) else []
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages_of(prompt or [], where)
        if asked and whole[: len(asked)] != asked and not any(message["role"] == "user" for message in whole):
            return _answered(asked, chosen, name, where, messages_of)
        shared = next((i for i, (one, two) in enumerate(zip(whole, other)) if one != two), min(len(whole), len(other)))
        return Form(name, messages=whole, learned_from=min(max(shared, len(asked)), len(whole) - 1) if whole else 0)
    if isinstance(prompt, list):
        return _answered(prompt, [{"role": "assistant", "content": _texts(record, ("chosen",), where)[0]}], name, where,
                         messages_of)
    prompt, chosen = _texts(record, ("prompt", "chosen"), where)
    answer = chosen[len(prompt):] if prompt and chosen.startswith(prompt) else chosen
    return _answered(prompt, answer, name, where, messages_of)


def _instruction(record: dict, where: str) -> Form:
    instruction, output = _texts(record, ("instruction", "output"), where)
    more = record.get("input") or ""
    if not isinstance(more, str):
        raise DataFault(f"{where}: 'input' is {type(more).__name__}, wanted a text")
    asked = f"{instruction}\n\n{more}" if more else instruction
    return Form("instruction and output", messages=[{"role": "user", "content": asked},
                                                   {"role": "assistant", "content": output}])
