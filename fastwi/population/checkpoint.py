"""A population on disk: one safetensors file, whole or absent, of which one member can be read alone.

The file holds the tensors weights_MP, momentum_MP, statistics_MQ and counters_MB as they are in memory, checksum_M
(int64 [M]: the CRC-32 of a member's four rows, one after another) and, as metadata, the format, its version and the
layout. Values come back to the bit, NaN payloads included, and the same population gives the same bytes.

The format is simple: 8 bytes with the length of a JSON header, the header, the tensors. It is written and read here,
so that bytes go straight from rows to the file and from the file into rows.
"""

import functools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastwi.errors import CheckpointError
from fastwi.files import atomic_open
from fastwi.population.layout import Layout
from fastwi.population.population import Population

FORMAT = "fastwi.population"
VERSION = "1"
_MOST_MEMBERS = 1 << 60
_ITEM_BYTES = {"I64": 8, "F32": 4}
MATRICES = ("weights_MP", "momentum_MP", "statistics_MQ", "counters_MB")
_WRITTEN = ("checksum_M", "counters_MB", "momentum_MP", "statistics_MQ", "weights_MP")  # safetensors' own order


class ByteStream(Protocol):
    """What a file is read from, from its start to its end."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` with the next bytes; return how many there were."""


@dataclass(frozen=True)
class Header:
    """What a file holds. `row_bytes`: the bytes of one member in each tensor, in the order of the file."""

    layout: Layout
    members: int
    row_bytes: dict[str, int]


def save(population: Population, path: str | os.PathLike[str]) -> None:
    """Write `population` to `path`, replacing an earlier file only once the new one is whole on the disk.

    Raises UserError where the disk is full or not writable.
    """
    with atomic_open(path) as stream:
        for piece in pieces(population):
            stream.write(piece)


def pieces(population: Population) -> Iterator[memoryview]:
    """The bytes of the population's file, one piece after another. Rows on the CPU are not copied."""
    tensors = {name: getattr(population, name).cpu().contiguous() for name in MATRICES}
    tensors["checksum_M"] = torch.tensor([_checksum(tensors, m) for m in range(population.members)])
    content: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "layout": population.layout.to_json(), "version": VERSION}
    }
    for name, (dtype, shape, offsets) in _described(population.layout, population.members, _WRITTEN).items():
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    header = json.dumps(content, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name in _WRITTEN:
        yield tensors[name].numpy().data


def _described(layout: Layout, members: int, order: Sequence[str]) -> dict[str, tuple[str, list[int], list[int]]]:
    """Type, shape and place among the file's data of each tensor, where they follow one another in `order`."""
    columns = {"weights_MP": layout.P, "momentum_MP": layout.P, "statistics_MQ": layout.Q, "counters_MB": layout.B}
    described, end = {}, 0
    for name in order:
        dtype = "I64" if name in ("checksum_M", "counters_MB") else "F32"
        shape = [members, columns[name]] if name in columns else [members]
        start, end = end, end + _ITEM_BYTES[dtype] * math.prod(shape)
        described[name] = dtype, shape, [start, end]
    return described


def load(
    path: str | os.PathLike[str],
    layout: Layout | None = None,
    device: torch.device | str | None = None,
    member: int | None = None,
) -> Population:
    """Read the population at `path`, or its member `member` alone, into fresh memory on `device` (default: the CPU).

    Where `layout` is given the file must have it. Raises CheckpointError, in one line, for a file that is
    missing, damaged, foreign, of another layout, or without that member.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a population that was saved")
    try:
        with path.open("rb") as stream:
            header = read_header(stream, os.fstat(stream.fileno()).st_size, path)
            if layout is not None:
                require_layout(path, header.layout, layout)
            first, members = (0, header.members) if member is None else (member, 1)
            if not 0 <= first < header.members:
                raise CheckpointError(f"{path}: no member {first}; it has members 0 to {header.members - 1}")
            population = Population.empty(header.layout, members)
            checksum_M = torch.empty(members, dtype=torch.int64)
            for name, row_bytes in header.row_bytes.items():
                stream.seek(first * row_bytes, os.SEEK_CUR)
                fill(stream, checksum_M if name == "checksum_M" else getattr(population, name), path)
                stream.seek((header.members - first - members) * row_bytes, os.SEEK_CUR)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); restore or rewrite it") from error
    tensors = {name: getattr(population, name) for name in MATRICES}
    for m in range(members):
        if _checksum(tensors, m) != int(checksum_M[m]):
            raise CheckpointError(
                f"{path}: the data of member {first + m} is damaged (checksum); restore or rewrite it"
            )
    return population if device is None else population.to(device)


def fill(stream: ByteStream, rows: Tensor, path: Path) -> None:
    """Read the next bytes into `rows`, contiguous and on the CPU."""
    if stream.readinto(rows.numpy().data) != rows.numel() * rows.element_size():
        raise CheckpointError(f"{path}: cut off while it was read; restore or rewrite it")


def require_layout(path: Path, stored: Layout, layout: Layout) -> None:
    """Raise CheckpointError unless what is stored is of `layout`."""
    if layout != stored:
        difference = stored.difference(layout, ("the file", "the network"))
        raise CheckpointError(
            f"{path}: written for another network: {difference}; "
            "build the network that wrote it, or name another checkpoint"
        )


def read_header(stream: ByteStream, size: int, path: Path) -> Header:
    """The header of a file of `size` bytes; what follows in `stream` are the tensors.

    Raises CheckpointError for anything but a population that is whole by its size.
    """
    length = int.from_bytes(stream.read(8), "little")
    try:
        if length > size - 8:
            raise ValueError("damaged or not a safetensors file (its header is cut off); restore or rewrite it")
        header = _parsed(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    needed = 8 + length + header.members * sum(header.row_bytes.values())
    if size != needed:
        raise CheckpointError(f"{path}: damaged ({size} bytes, not {needed}); restore or rewrite it")
    return header


@functools.lru_cache(maxsize=32)  # one network's members have the same header
def _parsed(text: bytes) -> Header:
    """The header. Raises ValueError where it is not that of a population."""
    try:
        content = json.loads(text.decode())
        metadata = content.pop("__metadata__", {})
        is_population = metadata.get("format") == FORMAT
        tensors = {name: (each["dtype"], each["shape"], each["data_offsets"]) for name, each in content.items()}
        order = sorted(tensors, key=lambda name: tensors[name][2])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"damaged or not a safetensors file ({error!s:.200}); restore or rewrite it") from error
    if not is_population:
        raise ValueError("not a population; load it with safetensors and Population.load_state_dict instead")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"population format version {metadata.get('version')!r:.60}, this fastwi reads {VERSION}; "
            "use the fastwi that wrote it"
        )
    try:
        layout = Layout.from_json(metadata.get("layout", ""))
    except ValueError as error:
        raise ValueError(f"damaged layout ({error!s:.200}); restore or rewrite it") from error
    if sorted(order) != sorted(_WRITTEN):
        raise ValueError(f"holds {sorted(order)!s:.300} instead of {sorted(_WRITTEN)}; restore or rewrite it")
    shape = tensors["weights_MP"][1]
    if not isinstance(shape, list) or not shape or type(shape[0]) is not int or not 0 < shape[0] < _MOST_MEMBERS:
        raise ValueError(f"weights_MP has the shape {shape!s:.100}; restore or rewrite it")
    for name, needed in _described(layout, shape[0], order).items():
        found = tensors[name]
        if found != needed or not all(type(number) is int for number in found[1] + found[2]):  # True == 1.0 == 1
            raise ValueError(f"{name} is {found!s:.200} where its layout needs {needed}; restore or rewrite it")
    row_bytes = {name: (tensors[name][2][1] - tensors[name][2][0]) // shape[0] for name in order}
    return Header(layout, shape[0], row_bytes)


def _checksum(tensors: dict[str, Tensor], m: int) -> int:
    """CRC-32 of member m's rows in the order of MATRICES. The tensors are contiguous and on the CPU."""
    value = 0
    for name in MATRICES:
        value = zlib.crc32(tensors[name][m].numpy().data, value)
    return value
