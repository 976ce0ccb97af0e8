"""Whether llama.cpp reads our GGUF files as we do: llama_cpp_reader.py LIBLLAMA.so FOLDER … --data SHARDS [--tokens N].

LIBLLAMA.so is llama.cpp's own library with its libggml*.so beside it; it is none of our requirements, and called as C. Of every
folder `limbeck export-gguf` makes two files: the folder's codes, and by --rule the floats that they stand for.
llama.cpp rounds the inputs of packed weights to 8 bits and we do not, so the second shows that it reads the same weights, and
the first what is left of that by its own products. Its keys and values are kept in float32, not in halves. Greedy tokens after
prompts of the data are compared with those of `limbeck generate` in float32, perplexities of rows of the data with those of
`limbeck forward`.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path

import torch
from limbeck_predictions import greedy_tokens, limbeck, logits_of, rows_of

PROMPT_LENGTHS = (8, 16, 24, 32, 40, 48, 56, 64)


class Params(ctypes.Structure):
    """Of a model or a context: their defaults, passed on as they came. More than any version has."""

    _fields_ = [("all", ctypes.c_char * 512)]


def in_float32(params: Params) -> Params:
    """A context's defaults, but keys and values in float32 and attention without its fast form, which rounds to halves. Where the two stand
    is found by what is around them: four enumerations that are -1, the last of which is that form's; no callback (two null pointers), and
    then the types of keys and of values, of which 1 is float16 and 0 float32."""
    words = (ctypes.c_int32 * 128).from_buffer_copy(params)
    forms = [i for i in range(8, 16) if list(words[i : i + 4]) == [-1] * 4]
    types = [i for i in range(16, 32) if list(words[i - 4 : i + 2]) == [0, 0, 0, 0, 1, 1]]
    if len(forms) != 1 or len(types) != 1:
        raise SystemExit("llama_context_default_params: laid out otherwise than in the versions that were tried (node-llama-cpp 3.22.1)")
    words[forms[0] + 3] = words[types[0]] = words[types[0] + 1] = 0
    return Params.from_buffer_copy(words)


class Batch(ctypes.Structure):
    _fields_ = [("tokens", ctypes.c_int32), *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits"))]


class LlamaCpp:
    def __init__(self, library: Path):
        folder = library.resolve().parent
        for name in ("libggml-base.so", *sorted(file.name for file in folder.glob("libggml.*so"))):
            ggml = ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.c = ctypes.CDLL(str(library))
        self.c.llama_log_set(self.quiet, None)
        self.c.llama_backend_init()
        for name in ("llama_model_default_params", "llama_context_default_params"):
            getattr(self.c, name).restype = Params
        self.c.llama_batch_get_one.restype, self.c.llama_batch_get_one.argtypes = Batch, [ctypes.c_void_p, ctypes.c_int32]
        self.c.llama_decode.argtypes = [ctypes.c_void_p, Batch]
        for name, arguments, result in (
            ("llama_model_load_from_file", [ctypes.c_char_p, Params], ctypes.c_void_p),
            ("llama_init_from_model", [ctypes.c_void_p, Params], ctypes.c_void_p),
            ("llama_model_get_vocab", [ctypes.c_void_p], ctypes.c_void_p),
            ("llama_vocab_n_tokens", [ctypes.c_void_p], ctypes.c_int32),
            ("llama_get_logits", [ctypes.c_void_p], ctypes.POINTER(ctypes.c_float)),
            ("llama_get_memory", [ctypes.c_void_p], ctypes.c_void_p),
            ("llama_memory_clear", [ctypes.c_void_p, ctypes.c_bool], None),
            ("llama_set_n_threads", [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32], None),
            ("llama_free", [ctypes.c_void_p], None),
            ("llama_model_free", [ctypes.c_void_p], None),
        ):
            getattr(self.c, name).argtypes, getattr(self.c, name).restype = arguments, result

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)

    def open(self, file: Path) -> None:
        self.model = self.c.llama_model_load_from_file(str(file).encode(), self.c.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{file}: llama.cpp does not load it")
        self.context = self.c.llama_init_from_model(self.model, in_float32(self.c.llama_context_default_params()))
        self.c.llama_set_n_threads(self.context, torch.get_num_threads(), torch.get_num_threads())
        self.vocabulary = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))

    def close(self) -> None:
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)

    def after(self, ids: list[int]) -> torch.Tensor:
        """The logits after the last of these tokens, which follow on those of the calls before."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        status = self.c.llama_decode(self.context, self.c.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise SystemExit(f"llama_decode: {status}")
        floats = ctypes.c_float * self.vocabulary
        return torch.frombuffer(floats.from_address(ctypes.addressof(self.c.llama_get_logits(self.context).contents)), dtype=torch.float32).clone()

    def forget(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        self.forget()
        said, logits = [], self.after(prompt)
        while True:
            said.append(int(logits.argmax()))
            if len(said) == count:
                return said
            logits = self.after(said[-1:])

    def logits(self, row: list[int]) -> torch.Tensor:
        self.forget()
        return torch.stack([self.after([token]) for token in row])


def perplexity(logits: torch.Tensor, rows: torch.Tensor) -> float:
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), rows[:, 1:].flatten())
    return float(losses.exp())


def compare(llama: LlamaCpp, folder: Path, rows: torch.Tensor, count: int, work: Path) -> None:
    prompts = [rows[i % len(rows), :length].tolist() for i, length in enumerate(PROMPT_LENGTHS)]
    ours = [greedy_tokens(folder, prompt, count, work) for prompt in prompts]
    our_logits = logits_of(folder, rows, work)
    for what, flags in (("its codes", []), ("the floats they stand for", ["--dtype=float32", "--rule=** float32"])):
        file = work / "model.gguf"
        limbeck("export-gguf", f"--model={folder}", f"--output={file}", *flags)
        llama.open(file)
        equal = sum(llama.greedy(prompt, count) == tokens for prompt, tokens in zip(prompts, ours, strict=True))
        theirs = torch.stack([llama.logits(row) for row in rows.tolist()])
        llama.close()
        size = file.stat().st_size
        file.unlink()
        print(f"{folder}, {what}, {size} bytes: {equal} of {len(prompts)} prompts with {count} equal tokens; perplexity "
              f"{perplexity(theirs, rows):.4f}, ours {perplexity(our_logits, rows):.4f}; log probabilities within "
              f"{(theirs.log_softmax(-1) - our_logits.log_softmax(-1)).abs().max():.2e}", flush=True)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("library", type=Path)
    arguments.add_argument("folders", nargs="+", type=Path)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--rows", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=48)
    asked = arguments.parse_args()
    llama, rows = LlamaCpp(asked.library), rows_of(asked.data, asked.rows, 128)
    with tempfile.TemporaryDirectory() as work:
        for folder in asked.folders:
            compare(llama, folder, rows, asked.tokens, Path(work))


if __name__ == "__main__":
    main()
