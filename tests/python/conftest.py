"""Settings that must stand before transformers is imported, and the fixtures the parity tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin between operators of microseconds cost whole minutes once anything else runs on the two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)

import parity_measures  # noqa: E402


@pytest.fixture(scope="session")
def limbeck():
    """The built program; without it every test fails and says what to type."""
    return parity_measures.program()
