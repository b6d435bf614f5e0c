"""Interpolation and averages on a pretended GPU: what a planned call launches; nothing is left on the CPU."""

from collections.abc import Iterator

import pytest
from pretended_cuda import PretendedCuda, pretended_cuda

from fastwi.models.registry import build_model
from fastwi.population import Layout, Population


@pytest.fixture
def cuda() -> Iterator[PretendedCuda]:
    pytest.importorskip("triton")
    with pretended_cuda() as device:
        yield device


def population(members: int) -> Population:
    return Population.zeros(Layout.of(build_model("resnet20", 10, 0.25)), members, "cuda")


@pytest.mark.parametrize(("momentum", "kernels"), [("reset", 2), ("average", 3), ("keep", 3)])
def test_a_planned_call_launches_and_no_more(cuda, momentum, kernels):
    """A kernel for each matrix, and what zeros momentum and settles counters. Nothing is copied to the device."""
    members, other = population(8), population(3)
    plan = members.interpolation([(0, 1), (4, 2)], [0.5, 1.0], other, momentum)
    for _ in range(2):
        cuda.launches.clear()
        plan()
        assert cuda.counts()["interpolate_kernel"] == kernels
        assert len(cuda.launches) == 9
        assert cuda.counts()["_to_copy"] == 0
        assert cuda.reads == []


def test_rows_that_others_read_are_written_last(cuda):
    members = population(3)
    members.lerp_rows_([(0, 1), (1, 2), (2, 0)])
    names = [launch[0] for launch in cuda.launches]
    assert names.index("index_copy_") > names.index("interpolate_kernel")
    assert cuda.reads == []


def test_averages(cuda):
    members = population(4)
    made = Population.averages([[(members, 0), (members, 1)], [(members, 3)]], [[0.5, 0.5], [1.0]], "average")
    assert cuda.counts()["combine_kernel"] == 3
    assert made.device == members.device
    assert cuda.reads == []
