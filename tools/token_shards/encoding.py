"""Documents to tokens: ids, which of them are targets, and where two tokenizers end at the same character."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from guarded_work import is_panic, one_line, step

from token_shards import DataFault
from token_shards.chat import Segment
from token_shards.documents import Document
from token_shards.tokenizer_file import TokenizerFile

SECONDS, SECONDS_A_CHARACTER = 5, 2e-5  # of processor time, that tokenizing may take
MEMORY_A_CHARACTER = 600


@dataclasses.dataclass
class Stream:
    """One tokenizer's view of one document."""

    ids: np.ndarray  # int32
    mask: np.ndarray  # uint8, 1 = target
    ends: np.ndarray | None = None  # int64, the characters completed by this token and those before it


@dataclasses.dataclass
class EncodedDocument:
    student: Stream
    teacher: Stream | None = None
    position: np.ndarray | None = None  # int32, of the teacher's tokens, for every token of the student
    label: int | None = None


def completed_characters(offsets: list[tuple[int, int]], special: list[int], length: int) -> np.ndarray:
    """How many characters are complete behind each token. A token that holds only the first bytes of a character has
    not completed it; special tokens complete nothing before the text, and stand behind its last character after it."""
    if not offsets:
        return np.zeros(0, np.int64)
    begins, ends = np.array(offsets, np.int64).T
    added = np.array(special, bool) & (begins == 0) & (ends == 0)
    behind = np.logical_or.accumulate(~added)
    ends = np.maximum.accumulate(np.where(added, np.where(behind, length + 1, 0), ends))
    # Where the next token begins before this one ends, they share a character, which is not complete yet.
    ends[:-1] -= (~added[1:] & (begins[1:] < ends[:-1])).astype(np.int64)
    return np.maximum.accumulate(ends)


def aligned(student_ends: np.ndarray, teacher_ends: np.ndarray) -> np.ndarray:
    """For every student token the last teacher token that ends at the same character or before it, -1: none does."""
    return (np.searchsorted(teacher_ends, student_ends, side="right") - 1).astype(np.int32)


def targets_of(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> np.ndarray:
    """1 where a token ends within one of the spans, which ascend: one that also holds the end of a prompt, such as a blank,
    is how the text behind it begins. Empty tokens are never targets."""
    mask, at = np.zeros(len(offsets), np.uint8), 0
    for i, (begin, end) in enumerate(offsets):
        while at < len(spans) and spans[at][1] < end:
            at += 1
        mask[i] = at < len(spans) and end > begin and end > spans[at][0]
    return mask


class _Refused(Exception):
    """What the tokenizers library raised."""


class Encoder:
    """Encodes documents many at a time with one tokenizer. `ends`: append the end-of-sequence token."""

    def __init__(self, file: TokenizerFile, ends: bool, special_tokens: bool, offsets: bool):
        self._tokenizer, self.path, self._vocabulary = file.tokenizer, file.path, file.vocabulary
        self._end = file.end if ends else None
        self._special_tokens = special_tokens
        self._offsets = offsets

    def __call__(self, documents: list[list[Segment]]) -> list[Stream]:
        first = self._encode([segments[0] for segments in documents if segments], self._special_tokens)
        rest = self._encode([segment for segments in documents for segment in segments[1:]], False)
        out = []
        for segments in documents:
            encodings = [first.pop()] + [rest.pop() for _ in segments[1:]] if segments else []
            out.append(self._joined(segments, encodings))
        return out

    def _encode(self, segments: list[Segment], special_tokens: bool) -> list:
        need_offsets = self._offsets or any(segment.spans is not None for segment in segments)
        encode = self._tokenizer.encode_batch if need_offsets else self._tokenizer.encode_batch_fast
        texts = [segment.text for segment in segments]
        try:
            return encode(texts, add_special_tokens=special_tokens)[::-1]
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # the library raises plain Exception, and its panics are none
            if not (is_panic(error) or type(error) is Exception):
                raise
            raise _Refused(one_line(error, 160)) from None

    def _checked(self, ids: list[int]) -> np.ndarray:
        array = np.array(ids, np.int64)
        if len(array) and array.max() >= self._vocabulary:
            raise _Refused(f"gives id {array.max()}, and its vocabulary ends at {self._vocabulary - 1}")
        return array.astype(np.int32)

    def streams(self, documents: list[Document], segments: list[list[Segment]]) -> list[Stream]:
        """Of every document; what cannot be tokenized is named."""
        try:
            return self(segments)
        except _Refused as refused:
            for document, alone in zip(documents, segments):
                try:
                    self([alone])
                except _Refused as of_this:
                    raise self._fault(document.where, of_this) from None
            raise self._fault(places(documents), refused) from None

    def _fault(self, where: str, refused: _Refused) -> DataFault:
        return DataFault(f"{where}: the tokenizer {self.path} fails on this text: {refused}: leave the text out, or use "
                         "another tokenizer")

    def _joined(self, segments: list[Segment], encodings: list) -> Stream:
        ids, masks, ends, base = [], [], [], 0
        for segment, encoding in zip(segments, encodings):
            ids.append(self._checked(encoding.ids))
            spans = segment.spans
            masks.append(np.ones(len(ids[-1]), np.uint8) if spans is None else targets_of(encoding.offsets, spans))
            if self._offsets:
                ends.append(base + completed_characters(encoding.offsets, encoding.special_tokens_mask, len(segment.text)))
            base += len(segment.text) + 1
            has_end = len(ids[-1]) > 0 and ids[-1][-1] == self._end
            if segment.ends and self._end is not None and not has_end:
                ids.append(np.array([self._end], np.int32))
                masks.append(np.array([segment.end_is_target], np.uint8))
                ends.append(np.array([base], np.int64))  # one behind the last character
        joined = [np.concatenate(parts) if parts else np.zeros(0, kind)
                  for parts, kind in ((ids, np.int32), (masks, np.uint8), (ends, np.int64))]
        return Stream(joined[0], joined[1], joined[2] if self._offsets else None)


def places(documents: list[Document]) -> str:
    first, last = documents[0].where, documents[-1].where
    return first if first == last else f"{first} to {last}"


def encode_documents(documents: list[Document], segments_of: Callable[[Document], list[Segment]], student: Encoder,
                     teacher: Encoder | None, memory: int) -> list[EncodedDocument]:
    """`memory`: bytes that may be held beside what tokenizing these takes."""
    segments, characters = [], 0
    for document in documents:
        size = document.characters()
        step("rendering it as text", document.where, SECONDS + size * SECONDS_A_CHARACTER,
             memory + (characters + size) * MEMORY_A_CHARACTER, "leave it out")
        segments.append(segments_of(document))
        characters += sum(len(segment.text) for segment in segments[-1])
    step(f"tokenizing it with {student.path}", places(documents), SECONDS + characters * SECONDS_A_CHARACTER,
         memory + characters * MEMORY_A_CHARACTER, "leave it out, or use another tokenizer")
    out = [EncodedDocument(stream, label=document.label)
           for stream, document in zip(student.streams(documents, segments), documents)]
    if teacher:
        for encoded, stream in zip(out, teacher.streams(documents, segments)):
            encoded.teacher = stream
            encoded.position = aligned(encoded.student.ends, stream.ends)
    return out
