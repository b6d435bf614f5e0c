"""Both ways that interpolation can take: torch, and the Triton kernel, interpreted where there is no GPU."""

import pytest
import torch

from fastwi.kernels import interpolate, interpolate_lists


@pytest.fixture(params=["torch", "triton"])
def device(request, monkeypatch):
    """The device to test on, with dispatch sent down one of the two paths."""
    if request.param == "torch":
        return torch.device("cpu")
    pytest.importorskip("triton")
    for module in (interpolate, interpolate_lists):
        monkeypatch.setattr(module, "has_triton", lambda device: True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
