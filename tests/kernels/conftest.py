"""Both ways that kernels can take: torch, and Triton, interpreted where there is no GPU."""

import pytest
import torch

from fastwi.kernels import gpu


@pytest.fixture(params=["torch", "triton"])
def path(request, monkeypatch):
    """The name of one of the two ways, with dispatch sent down it."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "has_triton", lambda device: request.param == "triton")
    return request.param


@pytest.fixture
def device(path) -> torch.device:
    """The device to test on, with dispatch sent down one of the two ways."""
    return torch.device("cuda" if path == "triton" and torch.cuda.is_available() else "cpu")
