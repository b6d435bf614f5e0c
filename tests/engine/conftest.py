"""What tests of engines share."""

from collections.abc import Iterator

import pytest
from pretended_cuda import PretendedCuda, pretended_cuda


@pytest.fixture
def cuda() -> Iterator[PretendedCuda]:
    """A pretended GPU."""
    with pretended_cuda() as device:
        yield device
