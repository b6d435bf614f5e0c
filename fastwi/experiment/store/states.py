"""States as files: written whole, and never used before their size and SHA-256 are checked.

No index is needed: a worker on another machine is given the `StoredState` to read, or returns the one to commit.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastwi.errors import CheckpointError
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedState, StoredState
from fastwi.files import atomic_open, locked, open_plain, sync_directory
from fastwi.sealed import stream_sha256

if TYPE_CHECKING:  # torch takes seconds to import, and `python -m fastwi.store ls` needs none of it
    import torch

    from fastwi.population import Layout, Population

_WRITERS = 8  # threads; they wait for the disk, which flushes for several at once
_Result = TypeVar("_Result")


def write_states(directory: str | os.PathLike[str], states: Sequence[tuple[str, "Population"]]) -> list[StoredState]:
    """Write populations of one member, each as the state of its key, to the disk; `Store.commit` takes the result.

    Claim the states' tasks before: `gc` removes a file that is neither in the index nor claimed. Raises ValueError
    for a population of more than one member, and UserError where the disk is full or not writable.
    """
    if not states:
        return []
    if any(population.members != 1 for _, population in states):
        raise ValueError("a state is one network; a population has several members")
    places = StorePlaces(Path(directory))
    folders = {places.directory, places.states, *(places.state(key).parent for key, _ in states)}
    with locked(places.writing_lock, exclusive=False):
        files = _in_threads(_WRITERS, lambda state: _write(places, *state), states)
        _in_threads(_WRITERS, sync_directory, sorted(folders))
    return files


def _write(places: StorePlaces, key: str, population: "Population") -> StoredState:
    digest, size = hashlib.sha256(), 0
    with atomic_open(places.state(key)) as stream:
        for piece in population.file_pieces():
            digest.update(piece)
            size += stream.write(piece)
    return StoredState(key, size, digest.hexdigest())


def read_states(
    directory: str | os.PathLike[str],
    states: Sequence[StoredState],
    layout: "Layout",
    device: "torch.device | str | None" = None,
    into: "Population | None" = None,
) -> "Population":
    """The states whose files are `states`, in their order, as one population on `device`.

    `into`: the memory for it, as many members on the CPU. Raises DamagedState for the first that is missing or
    differs in any byte, and CheckpointError for one of another network than `layout`.
    """
    import torch

    from fastwi.population import Population

    places = StorePlaces(Path(directory))
    population = into or Population.empty(layout, len(states))
    rows = [(state, population[m]) for m, state in enumerate(states)]
    _in_threads(torch.get_num_threads(), lambda row: _read(places, *row), rows)
    return population if device is None else population.to(device)


class _Hashed:
    """A stream, and the SHA-256 of what was read of it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        count = self._stream.readinto(buffer)
        self._digest.update(buffer)
        return count

    def sha256(self) -> str:
        """In hexadecimal, once the rest is read."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()


def _read(places: StorePlaces, state: StoredState, row: "Population") -> None:
    """Read a state into `row`. The file is read once, and hashed on the way."""
    import torch

    from fastwi.population.checkpoint import TENSORS, fill, read_header, require_layout

    path = places.state(state.key)
    try:
        with open_plain(path) as file:
            stream = _Hashed(file)
            header = read_header(stream, state.bytes, path)
            fits = header.members == 1 and header.layout.fingerprint == row.layout.fingerprint
            for name in TENSORS if fits else ():
                fill(stream, torch.empty(1, dtype=torch.int64) if name == "checksum_M" else getattr(row, name), path)
            if stream.sha256() != state.sha256 or header.members != 1:
                raise CheckpointError(f"holds {header.members} members")
    except (OSError, CheckpointError) as error:
        # Where its bytes are others, that is the damage, whatever they then say of themselves.
        fix = f"{places.repair_command} has it trained again"
        raise DamagedState(f"{path}: {damage_of(places, state) or error}; {fix}", state.key) from error
    require_layout(path, header.layout, row.layout)


def _in_threads(threads: int, do: Callable[[Any], _Result], items: Sequence[Any]) -> list[_Result]:
    """What `do` returns for each item, by up to so many threads. Raises the first exception in the items' order."""
    if min(threads, len(items)) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(do, items))


def damage_of(places: StorePlaces, state: StoredState) -> str | None:
    """What is wrong with a state's file, or None where its bytes are those that were stored."""
    try:
        with open_plain(places.state(state.key)) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != state.bytes:
                return f"{size} bytes, not {state.bytes}"
            return None if stream_sha256(stream) == state.sha256 else "not the bytes that were stored (SHA-256)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
