"""What tests on the fake CUDA device of tests/fake_cuda/ share."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import model_zoo
import pytest
import resnet_bk_reference
import torch
from limbeck_runner import build_folder
from training_work import Work, saved

FOLDER = build_folder() / "fake_cuda"
only_where_built = pytest.mark.skipif(not (FOLDER / "liblimbeck_cuda.so").exists(), reason="built without the fake CUDA device")

FLOAT32 = 2e-6  # of a loss: both devices sum in float32, in another order


class Counters(NamedTuple):
    """tests/fake_cuda/counters.h."""

    launches: int
    operators: int
    waits: int
    bytes: int
    peak_bytes: int
    unordered: int
    polls: int
    registered_bytes: int
    most_registered_bytes: int
    graphs: int
    host_accesses: int

    @classmethod
    def of(cls, file: Path):
        return cls(*struct.unpack("11q", file.read_bytes()))


def resnet_bk_student(work: Work, kind: str) -> Path:
    """A student without attention, with the teacher's vocabulary; `kind` names its class."""
    config = resnet_bk_reference.ResNetBKConfig(
        vocab_size=work.teacher.config.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, bk_heads=3,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(4)
    return saved(getattr(resnet_bk_reference, kind)(config).float(), work.folder / kind)


def student_of_experts(work: Work) -> Path:
    """A student whose layers have experts, with the teacher's vocabulary."""
    config = model_zoo.transformers.MixtralConfig(
        vocab_size=work.teacher.config.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    return saved(model_zoo.transformers.MixtralForCausalLM(config).float(), work.folder / "experts")
