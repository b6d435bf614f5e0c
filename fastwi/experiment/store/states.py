"""States as files: written whole, and never used before their size and SHA-256 are checked.

The functions need no index, so a worker on another machine can call them: the driver hands it the `StateFile` to
read, or commits the one that it returns.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.errors import CheckpointError
from fastwi.experiment.store.filesystem import locked, open_plain, sync_directory
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedState, StateFile

if TYPE_CHECKING:  # torch takes seconds to import, and `python -m fastwi.store ls` needs none of it
    import torch

    from fastwi.population import Layout, Population


def write_state(directory: str | os.PathLike[str], key: str, population: "Population") -> StateFile:
    """Write a population of one member as the state `key`; return what the index is to know of it.

    The index learns of it in `Store.commit`. Claim the state's task before: a file that is neither in the index
    nor claimed by a live owner is swept away by `gc`. Raises ValueError for a population of several members, and
    UserError where the disk is full or not writable.
    """
    if population.members != 1:
        raise ValueError(f"a state is one network; the population has {population.members} members")
    places = StorePlaces(Path(directory))
    path = places.state(key)
    with locked(places.writing_lock, exclusive=False):
        population.save(path)
        sync_directory(path.parent)
    with open_plain(path) as stream:
        return StateFile(key, os.fstat(stream.fileno()).st_size, _sha256_of(stream.fileno()))


def read_state(
    directory: str | os.PathLike[str],
    state: StateFile,
    layout: "Layout | None" = None,
    device: "torch.device | str | None" = None,
) -> "Population":
    """The state whose file the index knows as `state`, as a population of one member on `device`.

    Raises DamagedState where the file is missing or differs in any byte, and CheckpointError where it is of
    another network than `layout`.
    """
    from fastwi.population import Population

    places = StorePlaces(Path(directory))
    path = places.state(state.key)
    try:
        with open_plain(path) as stream:
            damage = _difference(stream.fileno(), state)
            if damage is not None:
                raise _damaged(places, state.key, damage)
            population = Population.load(path, None, device)
            if not os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                raise _damaged(places, state.key, "replaced while it was read")
    except OSError as error:
        raise _damaged(places, state.key, error.strerror or str(error)) from error
    except DamagedState:
        raise
    except CheckpointError as error:
        raise _damaged(places, state.key, str(error)) from error
    if population.members != 1:
        raise _damaged(places, state.key, f"holds {population.members} members")
    if layout is not None and layout != population.layout:
        raise CheckpointError(
            f"{path}: written for another network: {population.layout.difference(layout)}; "
            "build the network that wrote it"
        )
    return population


def damage_of(places: StorePlaces, state: StateFile) -> str | None:
    """What is wrong with a state's file, or None where its bytes are those that were stored."""
    try:
        with open_plain(places.state(state.key)) as stream:
            return _difference(stream.fileno(), state)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def absent(places: StorePlaces, key: str) -> DamagedState:
    """The error for a state that the index does not have."""
    return DamagedState(f"{places.state(key)}: not in the store; train it again", key)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_plain(path) as stream:
        return _sha256_of(stream.fileno())


def _difference(descriptor: int, state: StateFile) -> str | None:
    size = os.fstat(descriptor).st_size
    if size != state.bytes:
        return f"{size} bytes, not {state.bytes}"
    return None if _sha256_of(descriptor) == state.sha256 else "not the bytes that were stored (SHA-256)"


def _sha256_of(descriptor: int) -> str:
    digest = hashlib.sha256()
    os.lseek(descriptor, 0, os.SEEK_SET)
    while chunk := os.read(descriptor, 1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _damaged(places: StorePlaces, key: str, damage: str) -> DamagedState:
    return DamagedState(
        f"{places.state(key)}: {damage}; `python -m fastwi.store verify --repair {places.directory}` "
        "has it trained again",
        key,
    )
