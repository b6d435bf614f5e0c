"""States and measurements of real small networks for the store's tests, and what to compare them by.

torch is imported where it is used: processes that only claim and commit start faster without it.
"""

import hashlib
import math
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.experiment.store import Measurement, Store, StoredState, read_states, write_states

if TYPE_CHECKING:
    from fastwi.population import Population


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:40]


def network(number: int) -> "Population":
    """A population of one that differs by `number`."""
    import torch
    from torch import nn

    from fastwi.population import Population

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        made = Population.from_modules([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])
    made.momentum_MP.copy_(made.weights_MP * 0.5)
    return made


def bits(value: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", value))[0]


SPECIAL = [math.inf, -math.inf, 0.0, -0.0, 5e-324, 2.2e-308, bits(0x7FF8000000000001), bits(0xFFF8DEADBEEF0001),
           bits(0x7FF0000000000001), 1 / 3]  # fmt: skip


def measurement(number: int, treatment: str = "own", draw: random.Random | None = None) -> Measurement:
    """With special values, or with random bits where `draw` is given."""
    floats = [SPECIAL[(number + n) % len(SPECIAL)] if draw is None else bits(draw.getrandbits(64)) for n in range(5)]
    train_loss, rate = (None, None) if treatment != "own" else floats[:2]
    return Measurement(key_of(number), treatment, number % 7, train_loss, rate, *floats[2:])


def written(store: Store, number: int) -> StoredState:
    """The file of a state, which is not committed yet."""
    return write_states(store.directory, [(key_of(number), network(number))])[0]


def fill(store: Store, numbers: range) -> None:
    """Each number: a state and two measurements, claimed and committed."""
    with store.owner() as owner:
        for number in numbers:
            tasks = owner.claim([(key_of(number), "own"), (key_of(number), "recomputed")])
            rows = [measurement(number, treatment) for _, treatment in tasks]
            assert store.commit(rows, [written(store, number)], tasks) == []


def values(population: "Population") -> list[bytes]:
    return [matrix.numpy().tobytes() for matrix in population.matrices]


def contents(store: Store) -> dict[str, dict]:
    """All values of a store, to the bit."""
    layout = network(0).layout
    return {
        "states": {k: values(read_states(store.directory, [f], layout)) for k, f in store.state_files().items()},
        "measurements": {key: m.columns() for key, m in store.measurements().items()},
        "attempts": store.attempts(),
    }


def copy_of(store: Path, target: Path) -> Path:
    return Path(shutil.copytree(store, target))


def flip(path: Path, place: int, change: int = 1) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= change
    path.write_bytes(content)
