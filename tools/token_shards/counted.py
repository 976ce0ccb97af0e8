"""What prepare_data.py read, and what it says of it at the end."""

import collections

from token_shards.record_forms import FORMS


class Counted:
    """What was read, for the messages at the end."""

    def __init__(self, classes):
        self.documents = self.tokens = self.empty = 0
        self.classes = classes
        self.forms, self.also, self.ends = collections.Counter(), collections.Counter(), collections.Counter()
        self.least_digest = 2**64
        self.run_together = 0

    def add(self, document, tokens):
        self.documents += 1
        self.tokens += len(tokens.student.ids)
        self.classes = max(self.classes, -1 if tokens.label is None else tokens.label + 1)
        self.forms[document.form] += 1
        self.also[document.also] += bool(document.also)
        self.least_digest = min(self.least_digest, document.digest())
        targets = tokens.student.mask.nonzero()[0]
        if len(targets):
            self.ends[int(tokens.student.ids[targets[-1]])] += 1
        around = document.text[document.prompt - 1:document.prompt + 1] if document.prompt else ""
        self.run_together += len(around) == 2 and around.isalnum()

    def lines(self, everything, file):
        """Which forms were recognised, and what a user should know of them. `file`: the tokenizer whose end is appended."""
        if set(self.forms) - {"text"}:
            found = ", ".join(f"{number:,} of {FORMS.get(form, form)}" for form, number in self.forms.items())
            learned = "all of them" if everything else "the answers alone (--learn all: the rest too)"
            yield f"recognised: {found}; learned: {learned}"
        for also, number in sorted(self.also.items()):
            if also:
                yield f"{number:,} of them could be read as {FORMS[also[0]]} too: --form {also[0]}"
        if self.run_together:
            yield (f"in {self.run_together:,} documents prompt and completion run into one another without a blank: --as-chat "
                   "makes them turns of a chat")
        if self.empty:
            yield f"{self.empty:,} empty documents were left out"
        if file and set(self.forms) - {"text"}:
            yield from self._other_end(file)

    def _other_end(self, file):
        [(end, number)] = self.ends.most_common(1) or [(file.end, 0)]
        name = file.tokenizer.id_to_token(end)
        if end != file.end and name in file.special_texts():
            yield (f"{number:,} of {self.documents:,} documents end with {name}, and the tokenizer's end-of-sequence token is "
                   f"{file.tokenizer.id_to_token(file.end)}: --eos '{name}' records the one that ends them")


def no_document_left(folder, counted, share, split):
    """The line for a part without a document, with what would give it one."""
    read = f"no document left of {counted.documents} read and {counted.empty} empty ones"
    if share is None:
        return f"{read}: name more texts, or change --max-tokens or --max-documents"
    read = f"{folder}: {read}"
    if not counted.documents:
        return f"{read}: name more texts, or change --max-tokens, --max-documents or --validation-fraction"
    texts = split == "file" and counted.forms["text"] > 0
    cut = "cut texts into more documents with --split-blank or --split-lines, " if texts else ""
    if folder.name == "train":
        return f"{read} with --validation-fraction {share:g}: {cut}name more texts, or a smaller share"
    least = counted.least_digest / 2**64 * 1.01
    larger = f", or --validation-fraction {least:.2g}" if counted.documents > 1 and least < 0.5 else ""
    return f"{read} with --validation-fraction {share:g}: {cut}name more texts{larger}"
