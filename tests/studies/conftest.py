"""The tiny sweep of `studied`, opened."""

import pytest
import torch
from studied import PAIRS, VARIANTS, studied_sweep


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def opened(digits_directory, tmp_path_factory):
    """Tests must not change it."""
    with studied_sweep(digits_directory, tmp_path_factory) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def pairs(digits_directory, tmp_path_factory, opened):
    with studied_sweep(digits_directory, tmp_path_factory, *PAIRS) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def variants(digits_directory, tmp_path_factory, opened):
    with studied_sweep(digits_directory, tmp_path_factory, *VARIANTS) as sweep:
        yield sweep
