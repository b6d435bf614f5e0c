"""Both ways that kernels can take: torch, and Triton, interpreted where there is no GPU."""

import pytest
import torch

from fastwi.kernels import batch_norm, convolution, cpu, gpu


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


@pytest.fixture
def work_space_of_its_size(monkeypatch):
    """Work space of batch norm and convolutions is NaN at first; they write to no more of it than they ask for."""
    given, beyond = [], 1 << 17

    def scratch(name: str, *sizes: int) -> torch.Tensor:
        floats = cpu._floats(name, *sizes, torch.get_num_threads())
        given.append(torch.full((floats + beyond,), torch.nan, dtype=torch.float32))
        return given[-1]

    for module in (batch_norm, convolution):
        monkeypatch.setattr(module, "scratch", scratch)
    yield
    assert all(space[-beyond:].isnan().all() for space in given)
