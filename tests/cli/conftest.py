import pytest
import torch


@pytest.fixture(autouse=True)
def threads_as_before():
    """Commands that run in this process set its threads; the tests after them are not to inherit that."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
