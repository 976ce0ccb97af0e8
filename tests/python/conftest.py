"""Settings that must stand before transformers is imported, and the fixtures the parity tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin between operators of microseconds cost whole minutes once anything else runs on the two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Models of tests are so small that a second thread costs two to four times the processor's time, and as many tests as there are
# cores run side by side anyway. What is about threads asks for them: --threads, torch.set_num_threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def limbeck():
    """The built program; without it every test fails and says what to type."""
    from limbeck_runner import Limbeck

    return Limbeck()
