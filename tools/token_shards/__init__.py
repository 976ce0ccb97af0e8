"""Token shards: what tools/prepare_data.py writes and trainer/data/ reads."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from guarded_work import DataFault, UsageFault  # noqa: E402, F401

# A tokenizer's own, whatever it is in.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json", "chat_template.jinja")
