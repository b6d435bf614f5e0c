"""The tiny sweep of `studied`, opened."""

import pytest
import torch
from studied import PAIRS, VARIANTS, studied_sweep


def pytest_runtest_setup() -> None:
    torch.set_num_threads(1)  # before the module's fixtures too; conftest.py of all tests sets it back


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
