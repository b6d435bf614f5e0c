"""A population on disk: one safetensors file, whole or absent, of which one member can be read alone.

The file holds the tensors weights_MP, momentum_MP, statistics_MQ and counters_MB as they are in memory,
checksum_M (int64 [M]: the CRC-32 of the four rows of a member, one after another) and, as metadata, the
format, its version and the layout. Any safetensors reader can open it. Values come back to the bit, NaN
payloads included.
"""

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastwi.errors import CheckpointError
from fastwi.files import atomic_path
from fastwi.population.layout import Layout
from fastwi.population.population import Population

FORMAT = "fastwi.population"
VERSION = "1"
_MOST_DIMENSIONS = 64  # PyTorch's own bound
_MOST_ELEMENTS = 1 << 60
MATRICES = ("weights_MP", "momentum_MP", "statistics_MQ", "counters_MB")


def save(population: Population, path: str | os.PathLike[str]) -> None:
    """Write `population` to `path`, replacing an earlier file only once the new one is whole on the disk.

    Raises UserError where the disk is full or not writable.
    """
    tensors = {name: getattr(population, name).cpu().contiguous() for name in MATRICES}
    tensors["checksum_M"] = torch.tensor([_checksum(tensors, m) for m in range(population.members)])
    metadata = {"format": FORMAT, "version": VERSION, "layout": population.layout.to_json()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
            _order_header(temporary)
        except SafetensorError as error:  # what the system said is left in its text only
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code.group(1)), os.strerror(int(code.group(1)))) from error


def _order_header(path: Path) -> None:
    """Have the same population give the same bytes: safetensors writes metadata in an order that it draws."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # else it escapes otherwise than safetensors; such names keep their order
            stream.seek(8)
            stream.write(text.ljust(length))


def load(
    path: str | os.PathLike[str], layout: Layout | None = None, device: torch.device | str | None = None
) -> Population:
    """Read the whole population at `path` into fresh memory on `device` (default: the CPU).

    Where `layout` is given the file must have it. Raises CheckpointError, in one line, for a file that is
    missing, damaged, foreign or of another layout.
    """
    return _read(path, layout, device, slice(None))


def load_member(
    path: str | os.PathLike[str],
    m: int,
    layout: Layout | None = None,
    device: torch.device | str | None = None,
) -> Population:
    """Read member m alone as a population of 1; of the file's matrices only that row is read.

    Raises CheckpointError as `load` does, and where the file has no member m.
    """
    if m < 0:
        raise ValueError(f"members count from 0; there is no member {m}")
    return _read(path, layout, device, slice(m, m + 1))


def _read(
    path: str | os.PathLike[str], layout: Layout | None, device: torch.device | str | None, rows: slice
) -> Population:
    """The members `rows` of the file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a population that was saved")
    try:
        # Opened by descriptor first: safetensors reports an unreadable file less clearly.
        with path.open("rb"), safe_open(path, framework="pt") as file:
            stored = _stored_layout(path, file.metadata() or {})
            if layout is not None and layout != stored:
                raise CheckpointError(
                    f"{path}: written for another network: {stored.difference(layout)}; "
                    "build the network that wrote it, or name another checkpoint"
                )
            members = _check_shapes(path, stored, file.get_slice, file.keys())
            numbers = range(members)[rows]
            if not numbers:
                raise CheckpointError(f"{path}: no member {rows.start}; it has members 0 to {members - 1}")
            population = Population.zeros(stored, len(numbers))
            for name in MATRICES:
                getattr(population, name).copy_(file.get_slice(name)[rows])
            checksum_M = file.get_slice("checksum_M")[rows]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); restore or rewrite it") from error
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or no safetensors file ({reason}); restore or rewrite it") from error
    tensors = {name: getattr(population, name) for name in MATRICES}
    for place, m in enumerate(numbers):
        if _checksum(tensors, place) != int(checksum_M[place]):
            raise CheckpointError(f"{path}: the data of member {m} is damaged (checksum); restore or rewrite it")
    return population if device is None else population.to(device)


def _stored_layout(path: Path, metadata: dict[str, str]) -> Layout:
    """The layout in a file's metadata, once it is known to be a population."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a population; load it with safetensors and Population.load_state_dict instead"
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: population format version {metadata.get('version')!r:.60}, this fastwi reads {VERSION}; "
            "use the fastwi that wrote it"
        )
    try:
        layout = Layout.from_json(metadata.get("layout", ""))
        _check_layout(layout)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged layout ({error!s:.200}); restore or rewrite it") from error
    return layout


def _check_layout(layout: Layout) -> None:
    """Raise ValueError for what no network has: a file may say anything and still match its own fingerprint."""
    spans = (*layout.parameters, *layout.statistics, *layout.counters)
    names = {span.name for span in spans}
    if len(names) != len(spans):
        raise ValueError("two of its tensors have one name")
    for span in spans:
        if len(span.shape) > _MOST_DIMENSIONS or any(size < 0 for size in span.shape) or span.numel > _MOST_ELEMENTS:
            raise ValueError(f"{span.name!r:.60} has an impossible shape")
    missing = next((name for _, name in layout.keys if name not in names), None)
    if missing is not None or len({key for key, _ in layout.keys}) != len(layout.keys):
        raise ValueError("the keys of its state dict are not those of its tensors")


def _check_shapes(path: Path, layout: Layout, get_slice: Callable[[str], Any], keys: list[str]) -> int:
    """M, once the file's tensors are known to be those of `layout`."""
    columns = {
        "weights_MP": layout.P,
        "momentum_MP": layout.P,
        "statistics_MQ": layout.Q,
        "counters_MB": layout.B,
    }
    dtypes = dict.fromkeys(MATRICES, "F32") | {"counters_MB": "I64", "checksum_M": "I64"}
    if sorted(keys) != sorted(dtypes):
        raise CheckpointError(f"{path}: holds {sorted(keys)} instead of {sorted(dtypes)}; restore or rewrite it")
    members = next(iter(get_slice("weights_MP").get_shape()), 0)
    for name, dtype in dtypes.items():
        found = get_slice(name)
        expected = [members, columns[name]] if name in columns else [members]
        if found.get_shape() != expected or found.get_dtype() != dtype or members < 1:
            raise CheckpointError(
                f"{path}: {name} is {found.get_dtype()} {found.get_shape()} where its layout needs "
                f"{dtype} {expected}; restore or rewrite it"
            )
    return int(members)


def _checksum(tensors: dict[str, Tensor], m: int) -> int:
    """CRC-32 of member m's rows in the order of MATRICES. The tensors are contiguous and on the CPU."""
    value = 0
    for name in MATRICES:
        value = zlib.crc32(tensors[name][m].numpy().data, value)
    return value
