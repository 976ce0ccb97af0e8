"""What a record of JSONL or Parquet holds: a text, a chat, a prompt with its completion, a preference, an instruction.

Every form is a text or a chat of which only what stands behind the prompt is learned. None drops a prompt."""

from __future__ import annotations

import dataclasses

from guarded_work import one_line

from token_shards import DataFault

SHARE_GPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant",
                   "tool": "tool"}
SHARE_GPT_KEY = "conversations"
FORMS = {"text": "text", "chat": "chat", "prompt-completion": "prompt and completion", "preference": "chosen",
         "alpaca": "instruction and output"}  # and what a user calls them
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input", "source", "user", "human")
COMPLETIONS = ("completion", "response", "answer", "output", "solution", "target", "reply", "assistant", "chosen")


@dataclasses.dataclass
class Keys:
    """Under which keys the parts of a record stand, and which form it has ("auto": by the keys)."""

    text: str = "text"
    chat: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    form: str = "auto"
    as_chat: bool = False  # a prompt and completion that are texts become turns of a user and an assistant

    def named(self) -> list[str]:
        """All that a reader of columns must read."""
        return [self.text, self.chat, SHARE_GPT_KEY, self.prompt, self.completion, "chosen", "rejected", "instruction",
                "input", "output", "system", "history"]


@dataclasses.dataclass
class Content:
    form: str
    text: str = ""
    messages: list[dict] | None = None
    prompt: int = 0  # characters of the text, or messages, that come before what is learned


def shown(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def kind_of(value: object) -> str:
    return "null" if value is None else {"str": "a text", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, type(value).__name__)


def unicode_text(text: str, where: str) -> str:
    r"""JSON can spell halves of a character (\ud83d alone), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataFault(f"{where}: character {error.start} is half a surrogate pair, wanted Unicode text") from None
    return text


def _text(record: dict, key: str, where: str, absent: str | None = None) -> str:
    value = record.get(key)
    if value is None and absent is not None:
        return absent
    if not isinstance(value, str):
        raise DataFault(f"{where}: {key!r} is {kind_of(value)}, wanted a text")
    return unicode_text(value, f"{where}: {key!r}")


def messages_of(raw: list, where: str) -> list[dict]:
    messages = []
    for number, turn in enumerate(raw):
        place = f"{where}: message {number}"
        if not isinstance(turn, dict):
            raise DataFault(f"{place}: {kind_of(turn)}, wanted {{\"role\": ..., \"content\": ...}}")
        role, content = turn.get("role"), turn.get("content")
        if role is None and "from" in turn:
            role, content = turn["from"], turn.get("value")
        known = SHARE_GPT_ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            raise DataFault(f"{place}: role {shown(role)}, wanted system, user, assistant or tool")
        if not isinstance(content, str):
            raise DataFault(f"{place}: content is {kind_of(content)}, wanted a text")
        messages.append({"role": known, "content": unicode_text(content, place)})
    return messages


def _turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _common(one: str | list, other: str | list) -> int:
    """How many characters or messages both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _side(record: dict, key: str, where: str) -> str | list[dict]:
    value = record.get(key)
    if isinstance(value, list):
        return messages_of(value, f"{where}: {key!r}")
    if isinstance(value, str):
        return unicode_text(value, f"{where}: {key!r}")
    raise DataFault(f"{where}: {key!r} is {kind_of(value)}, wanted a text or a list of messages")


def _joined(form: str, prompt: str | list[dict], completion: str | list[dict], system: str, as_chat: bool) -> Content:
    """Two texts stand as they are, one behind the other; messages, and a text beside messages, are turns."""
    if isinstance(prompt, str) and isinstance(completion, str) and not as_chat and not system:
        return Content(form, prompt + completion, prompt=len(prompt))
    before = [_turn("user", prompt)] if isinstance(prompt, str) else prompt
    after = [_turn("assistant", completion)] if isinstance(completion, str) else completion
    if system and before[:1] != [_turn("system", system)]:
        before = [_turn("system", system), *before]
    return Content(form, messages=before + after, prompt=len(before))


def _pair(record: dict, keys: Keys, where: str) -> Content:
    prompt, completion = (_side(record, key, where) for key in (keys.prompt, keys.completion))
    return _joined("prompt-completion", prompt, completion, _text(record, "system", where, ""), keys.as_chat)


def _prompt_of(record: dict, keys: Keys, where: str) -> str | list[dict] | None:
    """Of a preference. None: there is none, which is refused where it only stands under another key."""
    if record.get(keys.prompt) is not None:
        return _side(record, keys.prompt, where)
    other = next((key for key in PROMPTS if isinstance(record.get(key), str)), None)
    if other is None:
        return None
    raise DataFault(f"{where}: 'chosen' without {keys.prompt!r}, but with a text under {other!r}: --prompt-key {other}")


def _preference(record: dict, keys: Keys, where: str) -> Content:
    """The chosen answer, which may hold the conversation before it; where no prompt stands beside it, the prompt is what
    the chosen and the rejected one begin with."""
    chosen, prompt = _side(record, "chosen", where), _prompt_of(record, keys, where)
    if prompt is None:
        rejected = record.get("rejected") and _side(record, "rejected", where)
        if isinstance(chosen, list):
            same = _common(chosen, rejected if isinstance(rejected, list) else [])
            return Content("preference", messages=chosen, prompt=same)
        if not isinstance(rejected, str):
            raise DataFault(f"{where}: 'chosen' without {keys.prompt!r} or a text 'rejected', so its prompt cannot be told "
                            "from its answer: --text-key chosen learns all of it")
        same = _common(chosen, rejected)
        same -= same > 0 and chosen[same - 1] == " "  # the blank belongs to the word after it
        return Content("preference", chosen, prompt=same)
    system = _text(record, "system", where, "")
    if isinstance(chosen, str):
        if isinstance(prompt, str) and prompt and chosen.startswith(prompt):
            chosen = chosen[len(prompt):]
        return _joined("preference", prompt, chosen, system, keys.as_chat)
    at = _end_of_prompt(chosen, prompt)
    if at:
        return Content("preference", messages=chosen, prompt=at)
    if isinstance(prompt, str) and any(turn["role"] != "assistant" for turn in chosen):
        raise DataFault(f"{where}: {keys.prompt!r} is in none of the messages of 'chosen', which are not only the assistant's: "
                        "leave one of them out, or read 'chosen' alone with --chat-key chosen")
    return _joined("preference", prompt, chosen, system, keys.as_chat)


def _end_of_prompt(chosen: list[dict], prompt: str | list[dict]) -> int:
    """How many messages of a whole conversation are its prompt; 0: it does not begin with it."""
    if isinstance(prompt, list):
        return len(prompt) if chosen[: len(prompt)] == prompt else 0
    return next((at + 1 for at, turn in enumerate(chosen) if turn["content"].strip() == prompt.strip()), 0)


def _alpaca(record: dict, _keys: Keys, where: str) -> Content:
    """Turns of a chat: system, what was said before, and the instruction with its input as one question."""
    system, more = _text(record, "system", where, ""), _text(record, "input", where, "")
    question, answer = _text(record, "instruction", where), _text(record, "output", where)
    messages = [_turn("system", system)] if system else []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise DataFault(f"{where}: 'history' is {kind_of(history)}, wanted a list of pairs: question and answer")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataFault(f"{where}: 'history' holds {shown(pair)}, wanted pairs of texts: question and answer")
        messages += [_turn(role, unicode_text(text, where)) for role, text in zip(("user", "assistant"), pair)]
    messages.append(_turn("user", f"{question}\n\n{more}" if more else question))
    return Content("alpaca", messages=[*messages, _turn("assistant", answer)], prompt=len(messages))


def _chat(record: dict, keys: Keys, where: str) -> Content:
    key = keys.chat if keys.chat in record or SHARE_GPT_KEY not in record else SHARE_GPT_KEY
    if not isinstance(record.get(key), list):
        raise DataFault(f"{where}: {key!r} is {kind_of(record.get(key))}, wanted a list of messages")
    return Content("chat" if key == keys.chat else SHARE_GPT_KEY, messages=messages_of(record[key], where))


def _whole_text(record: dict, keys: Keys, where: str) -> Content:
    return Content("text", _text(record, keys.text, where))


READERS = {"text": _whole_text, "chat": _chat, "prompt-completion": _pair, "preference": _preference, "alpaca": _alpaca}


def forms_of(record: dict, keys: Keys) -> list[str]:
    """All that the record can be read as, the first of them where nothing else is asked for."""
    def has(*names: str) -> bool:
        return all(record.get(name) is not None for name in names)

    found = [("text", isinstance(record.get(keys.text), str)),
             ("chat", isinstance(record.get(keys.chat), list) or isinstance(record.get(SHARE_GPT_KEY), list)),
             ("prompt-completion", has(keys.prompt, keys.completion)), ("preference", has("chosen")),
             ("alpaca", has("instruction", "output")), ("text", keys.text in record), ("chat", keys.chat in record)]
    return [form for form, there in found if there]


def _advice(record: dict) -> str:
    """What to type for these keys. A text beside which another stands is not proposed alone: it would lose its prompt."""
    texts = [key for key, value in record.items() if isinstance(value, str)]
    chats = [key for key, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    prompt = next((key for key in PROMPTS if key in texts), None)
    completion = next((key for key in COMPLETIONS if key in texts and key != prompt), None)
    if chats:
        return f"name yours with --chat-key {one_line(chats[0], 60)}"
    if prompt and completion:
        return f"name yours with --prompt-key {prompt} --completion-key {completion}"
    if len(texts) == 1:
        return f"name yours with --text-key {one_line(texts[0], 60)}"
    return "name yours with --prompt-key and --completion-key, or rename them"


def content_of(record: dict, keys: Keys, where: str) -> Content:
    forms = [keys.form] if keys.form != "auto" else forms_of(record, keys)
    if forms:
        return READERS[forms[0]](record, keys, where)
    names = ", ".join(shown(key, 40) for key in list(record)[:12]) or "none"
    raise DataFault(f"{where}: keys {names}, wanted {keys.text!r} (a text), {keys.chat!r} or {SHARE_GPT_KEY!r} (a chat), "
                    f"{keys.prompt!r} with {keys.completion!r}, {keys.prompt!r} with 'chosen' (a preference), or 'instruction' "
                    f"with 'output' and perhaps 'input': {_advice(record)}")
