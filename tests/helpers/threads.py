"""How many threads torch has in a test file."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small steps gain nothing by threads, and lose much on a busy machine. A file imports it to have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
