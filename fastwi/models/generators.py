"""The global generators that a network may draw from: torch's, NumPy's and that of Python's module random."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

States = dict[str, Any]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within the block all three draw by `seed`, from 0 to 2^64 - 1; afterwards they go on where they were."""
    before = states()
    gpus = [device] if device is not None and device.type == "cuda" else []
    # torch.manual_seed seeds all of them.
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else gpus):
        torch.manual_seed(seed)
        # Different seeds: NumPy and random have the same algorithm, and would give the same numbers.
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32, 1])
        random.seed(f"fastwi {seed}")
        try:
            yield
        finally:
            restore(before)


def states() -> States:
    """The states of the three generators (on the CPU)."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}


def restore(before: States) -> None:
    """Have the generators go on from `before`, which `states` gave."""
    torch.set_rng_state(before["torch"])
    np.random.set_state(before["numpy"])
    random.setstate(before["random"])


def drawn_from(before: States) -> frozenset[str]:
    """The generators that are no longer where they were `before`: torch, numpy, random."""
    now = states()
    same = {
        "torch": torch.equal(now["torch"], before["torch"]),
        "numpy": all(map(np.array_equal, now["numpy"], before["numpy"])),
        "random": now["random"] == before["random"],
    }
    return frozenset(name for name, equal in same.items() if not equal)


def draws_of(network: nn.Module) -> frozenset[str]:
    """The generators that a forward pass of a user's network draws from, as its trial noted them on it."""
    return getattr(network, "fastwi_draws", frozenset())
