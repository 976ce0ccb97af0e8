"""Settings that must stand before transformers is imported, and the fixtures the parity tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin between operators of microseconds cost whole minutes once anything else runs on the two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sys  # noqa: E402

import pytest  # noqa: E402


def pytest_collection_finish():
    # A file that needs torch has imported it by now; torch takes seconds, transformers more, and a third of the files
    # need neither.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(2)


@pytest.fixture(scope="session")
def limbeck():
    """The built program; without it every test fails and says what to type."""
    from limbeck_runner import Limbeck

    return Limbeck()
