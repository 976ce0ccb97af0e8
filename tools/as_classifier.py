#!/usr/bin/env python3
"""as_classifier.py MODEL OUT --labels A,B,...: an encoder's folder as that of a classifier of these classes.

Writes OUT/config.json with the architecture ForSequenceClassification and the classes' names (id2label), beside copies of
the weights and of the tokenizer. It makes no weights: the head is drawn by `limbeck train --student.init=new_head`, which
says what it drew. MODEL may be a folder with config.json alone, for --student.init=random.

    tools/as_classifier.py MODEL runs/classifier --labels "$(cat data/snippets/labels.txt)"
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import model_folder  # noqa: E402
from guarded_work import UsageFault, WeightsFault, one_line  # noqa: E402
from token_shards import TOKENIZER_FILES  # noqa: E402

CLASSIFIERS = {"bert": "BertForSequenceClassification", "distilbert": "DistilBertForSequenceClassification"}
OF_A_TASK = ("num_labels", "problem_type", "_name_or_path")  # of the model that it was
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def names(text: str) -> list[str]:
    found = text.strip().split(",")
    if len(found) < 2 or len(set(found)) < len(found) or not all(re.fullmatch(r"[^\x00-\x1f]{1,200}", name) for name in found):
        raise UsageFault(f"--labels {one_line(text, 60)}: wanted two names or more, each once, such as no,yes")
    return found


def new_config(path: Path, config: dict, labels: list[str]) -> dict:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSIFIERS:
        raise WeightsFault(f"{path}: model_type {one_line(repr(kind), 60)}, wanted an encoder: {', '.join(CLASSIFIERS)}")
    config = {key: value for key, value in config.items() if key not in OF_A_TASK}
    return config | {"architectures": [CLASSIFIERS[kind]], "id2label": {str(i): name for i, name in enumerate(labels)},
                     "label2id": {name: i for i, name in enumerate(labels)}}  # fmt: skip


def make(a: argparse.Namespace) -> None:
    config = new_config(a.model / "config.json", model_folder.read_config(a.model / "config.json"), names(a.labels))
    a.out.mkdir(parents=True, exist_ok=False)
    weights = sorted(path for pattern in WEIGHTS for path in a.model.glob(pattern))
    model_folder.copy_files([*weights, *(a.model / name for name in TOKENIZER_FILES)], a.out)
    model_folder.write_config(a.out, config)
    start = "--student.init=new_head" if weights else "--student.init=random (there are no weights)"
    print(f"{a.out}: a {config['architectures'][0]} of {len(config['id2label'])} classes: train it with {start}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", required=True, metavar="A,B,...", help="names of the classes in the order of their numbers")
    a = parser.parse_args(arguments)
    return model_folder.made("as_classifier", a.out, lambda: make(a))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
