"""A population on disk: one safetensors file, of which one member can be read alone.

The file holds the tensors weights_MP, momentum_MP, statistics_MQ and counters_MB as they are in memory, checksum_M
(int64 [M]: the CRC-32 of a member's four rows, one after another) and, as metadata, the format, its version and the
layout. Values come back to the bit, NaN payloads included, and the same population gives the same bytes.

The format is 8 bytes with the length of a JSON header, the header, the tensors. It is written and read here, so that
bytes go straight from rows to the file and from the file into rows.
"""

import functools
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastwi.errors import CheckpointError
from fastwi.files import open_plain
from fastwi.population.layout import MATRICES, Layout

FORMAT = "fastwi.population"
VERSION = "1"
TENSORS = ("checksum_M", *sorted(MATRICES))
"""In the order of the file, which is safetensors' own."""


class ByteStream(Protocol):
    """What a file is read from, from its start to its end."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` with the next bytes; return how many there were."""


@dataclass(frozen=True)
class Header:
    """What a file holds."""

    layout: Layout
    members: int


def pieces(layout: Layout, matrices: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a file, one piece after another. Rows on the CPU are not copied."""
    tensors = {name: matrix.cpu().contiguous() for name, matrix in matrices.items()}
    members = len(tensors["weights_MP"])
    tensors["checksum_M"] = torch.tensor([_checksum(tensors, m) for m in range(members)], device="cpu")
    metadata = {"format": FORMAT, "layout": layout.json, "version": VERSION}
    header = json.dumps({"__metadata__": metadata, **_described(layout, members)}, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name in TENSORS:
        yield tensors[name].numpy().data


def _described(layout: Layout, members: int) -> dict[str, dict[str, Any]]:
    """The header's entry for each tensor."""
    entries = {}
    end = 0
    for name in TENSORS:
        shape = [members, layout.widths[name]] if name in MATRICES else [members]
        dtype = MATRICES.get(name, torch.int64)
        start, end = end, end + dtype.itemsize * math.prod(shape)
        label = "I64" if dtype == torch.int64 else "F32"
        entries[name] = {"dtype": label, "shape": shape, "data_offsets": [start, end]}
    return entries


def read(path: Path, member: int | None = None) -> tuple[Layout, dict[str, Tensor]]:
    """The layout and the matrices of the population at `path`, or of its member `member` alone, on the CPU.

    Raises CheckpointError, in one line, for a file that is missing, damaged or foreign, or without that member.
    """
    try:
        with open_plain(path) as stream:
            header = read_header(stream, os.fstat(stream.fileno()).st_size, path)
            first, members = (0, header.members) if member is None else (member, 1)
            if not 0 <= first < header.members:
                raise CheckpointError(f"{path}: no member {first}; it has members 0 to {header.members - 1}")
            tensors = {"checksum_M": torch.empty(members, dtype=torch.int64, device="cpu")}
            tensors |= header.layout.empty(members, "cpu")
            for name in TENSORS:
                row_bytes = tensors[name][0].nbytes
                stream.seek(first * row_bytes, os.SEEK_CUR)
                fill(stream, tensors[name], path)
                stream.seek((header.members - first - members) * row_bytes, os.SEEK_CUR)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); restore or rewrite it") from error
    for m, checksum in enumerate(tensors.pop("checksum_M").tolist()):
        if _checksum(tensors, m) != checksum:
            raise CheckpointError(
                f"{path}: the data of member {first + m} is damaged (checksum); restore or rewrite it"
            )
    return header.layout, tensors


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
    needed = 8 + length + header.members * (8 + header.layout.row_bytes)  # with checksums
    if size != needed:
        raise CheckpointError(f"{path}: damaged ({size} bytes, not {needed}); restore or rewrite it")
    return header


@functools.lru_cache(maxsize=32)  # one network's members have the same header
def _parsed(text: bytes) -> Header:
    """The header. Raises ValueError where it is not that of a population."""
    try:
        content = json.loads(text)
        metadata = content.pop("__metadata__", {})
        kind, version = metadata.get("format"), metadata.get("version")
        if kind == FORMAT and version == VERSION:
            layout = Layout.from_json(metadata["layout"])
            (members,) = content["checksum_M"]["shape"]
            if type(members) is not int or members < 1:
                raise ValueError("its number of members")
            # As text: 1, 1.0 and true are equal in Python.
            if json.dumps(content, sort_keys=True) != json.dumps(_described(layout, members), sort_keys=True):
                raise ValueError("its tensors are not those of its layout")
            return Header(layout, members)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"damaged, or not a safetensors file ({error!s:.200}); restore or rewrite it") from error
    if kind == FORMAT:
        raise ValueError(
            f"population format version {version!r:.60}, this fastwi reads {VERSION}; use the fastwi that wrote it"
        )
    raise ValueError("not a population; load it with safetensors and Population.load_state_dict instead")


def _checksum(tensors: Mapping[str, Tensor], m: int) -> int:
    """CRC-32 of member m's rows in the order of MATRICES. The tensors are contiguous and on the CPU."""
    value = 0
    for name in MATRICES:
        value = zlib.crc32(tensors[name][m].numpy().data, value)
    return value
