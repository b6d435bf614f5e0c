"""Damaged and crafted checkpoints, and pickles under a checkpoint's name."""

import json
import pickle
import random
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from data_prep.digits import load_digits
from fastwi.population import Layout, Population
from fastwi.population.layout import MATRICES
from fastwi.population.state_file import read_state_file, save_state_dict
from hostile.mutate import damaged, damaged_text, damaged_value
from hostile.target import Finding, accepted, odd_file

MEMBERS = 3
_DICTS = ("dict.safetensors", "moving.safetensors", "dict.pt", "wrapped.pt")
_DTYPES = ("F64", "F32", "I64", "BF16", "F16", "U8", "BOOL", "F8_E4M3", "C64")


def networks() -> list[nn.Module]:
    """Two architectures, small enough that most of a file is header."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    return [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), conv]


class Malicious:
    """Unpickled, it would leave a directory behind."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self._place),)


class Checkpoints:
    """`Population.load`, also of one member, and `read_state_file`."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        x_NCHW = torch.from_numpy(load_digits("digits").train.images_NHWC[:64, ::2, ::2].copy()).permute(0, 3, 1, 2)
        for place, module in enumerate(networks()):
            if place:  # real digits, so that statistics and counters are not all zeros
                module(x_NCHW.float() / 255)
            population = Population.from_modules([module] * MEMBERS)
            population.momentum_MP.copy_(population.weights_MP * 0.5)
            population.save(directory / f"{place}.safetensors")
        state = networks()[0].state_dict()
        save_state_dict(state, directory / "dict.safetensors")
        save_state_dict(state, directory / "dict.pt")
        moving = {name: value * 0.5 for name, value in networks()[0].named_parameters()}
        save_state_dict(state, directory / "moving.safetensors", moving)
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
            directory / "wrapped.pt",
        )

    def __init__(self, corpus: Path) -> None:
        self._files = [(corpus / f"{place}.safetensors").read_bytes() for place in range(2)]
        self._dicts = [(corpus / name).read_bytes() for name in _DICTS]
        self._layouts = [Layout.of(module) for module in networks()]

    def attempt(self, draw: random.Random, work: Path) -> bool:
        path = work / "a.safetensors"
        kind = draw.random()
        if kind < 0.01:
            odd_file(draw, path, work.parent.parent / "outside")
        elif kind < 0.10:
            path.write_bytes(damaged(draw, draw.choice(self._dicts), [(0, 8)], self._files))
        elif kind < 0.14:
            path.write_bytes(_pickled(draw, work, self._files[0]))
        elif kind < 0.35:
            path.write_bytes(damaged(draw, draw.choice(self._files), [(0, 8)], self._files))
        else:
            path.write_bytes(_crafted(draw, draw.choice(self._files)))
        found = (
            _state_file(draw, path) if draw.random() < (0.8 if kind < 0.10 else 0.2) else self._population(draw, path)
        )
        if (work / "EXECUTED").exists():
            raise Finding("a pickle was executed")
        return found

    def _population(self, draw: random.Random, path: Path) -> bool:
        """The file as a population, or one member of it."""
        layout = draw.choice((None, None, *self._layouts))
        member = draw.choice((0, 0, 1, 2, 3, 10**6)) if draw.random() < 0.5 else None
        population = accepted(lambda: Population.load(path, layout, member=member))
        if population is not None:
            _compare(path.read_bytes(), population, slice(None) if member is None else slice(member, member + 1))
        return population is not None


def _state_file(draw: random.Random, path: Path) -> bool:
    """The file as an ordinary state dict, or a member of it as a population."""
    member = draw.choice((None, 0, 1, MEMBERS))
    state = accepted(lambda: read_state_file(path, member))
    if state is None:
        return False
    if len(state.digest) != 64:
        raise Finding("no digest")
    if _named_bytes(state.tensors, state.momentum) != _stored(path, member or 0):
        raise Finding("a state dict or momentum that is not the file's")
    return True


def _stored(path: Path, member: int) -> dict[str, tuple[object, ...]]:
    """The same of the file as the library that wrote it reads it."""
    data = path.read_bytes()
    if data[8:9] != b"{":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = torch.load(path, weights_only=True)
        return _named_bytes(told.get("state_dict", told), {})
    if "weights_MP" in split(data)[0]:
        population = Population.load(path, member=member)
        _compare(data, population, slice(member, member + 1))
        return _named_bytes(population.state_dict(0), population.momentum(0))
    return _named_bytes(safetensors.torch.load(data), {})


def _named_bytes(tensors: Mapping[str, Any], momentum: Mapping[str, Any]) -> dict[str, tuple[object, ...]]:
    """Dtype, shape and bits of all tensors: momentum under its name in a file, names without a wrapper's prefix."""
    named = {**tensors, **{f"momentum.{name}": tensor for name, tensor in momentum.items()}}
    return {
        name.removeprefix("module."): (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())
        for name, tensor in named.items()
    }


def _pickled(draw: random.Random, work: Path, whole: bytes) -> bytes:
    """A pickle as torch.save or pickle writes it, alone or behind a safetensors header's length."""
    content = Malicious(work / "EXECUTED")
    if draw.random() < 0.5:
        place = work / "saved"
        torch.save({"weights": content}, place)
        data = place.read_bytes()
    else:
        data = pickle.dumps({"weights": content}, draw.randrange(5))
    return draw.choice((data, struct.pack("<Q", len(data)) + data, whole[: draw.randrange(len(whole))] + data))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors' bytes."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _crafted(draw: random.Random, data: bytes) -> bytes:
    """A header that says other things than the file is, or other values under right checksums."""
    header, body = split(data)
    kind, words = draw.randrange(6), (*header, *_DTYPES, "data_offsets", "shape", "dtype")
    text = ""
    if kind == 0:
        text = damaged_text(draw, json.dumps(header), (*words, '"shape":[]', ","))
    elif kind <= 2:
        header = damaged_value(draw, header, words)
    elif kind == 3:
        header["__metadata__"]["layout"] = _sealed_layout(draw, header["__metadata__"]["layout"])
    elif kind == 4:
        body = draw.choice((b"", body[:-1], body + b"\0", damaged(draw, body)))
    else:
        body = _other_values(draw, header, body)
    encoded = (text or json.dumps(header)).encode(errors="surrogatepass")
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + body


def _sealed_layout(draw: random.Random, text: str) -> str:
    """A layout of other sizes that matches its own fingerprint, as far as it can be reckoned."""
    told = json.loads(text)
    groups = ("parameters", "statistics", "counters")
    changed = damaged_value(draw, {group: told[group] for group in groups})
    if isinstance(changed, dict):
        told |= changed
    try:
        layout = Layout._pack(*(told[group] for group in groups), told["keys"])
        told["fingerprint"] = layout.fingerprint
    except Exception:  # it cannot even be packed; the old fingerprint stays
        pass
    return json.dumps(told)


def _other_values(draw: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """Random bits, NaNs among them, in every matrix, with checksums that fit: a valid file."""
    changed = bytearray(body)
    for name in MATRICES:
        start, end = header[name]["data_offsets"]
        for place in (draw.randrange(start, end) & ~7 for _ in range(4 * (end > start))):
            bits = draw.choice((draw.randbytes(8), b"\xff" * 8, b"\x01\0\xa0\x7f" * 2))
            changed[place : place + 8] = bits[: end - place]
    start, end = header["checksum_M"]["data_offsets"]
    sums = [_checksum(header, bytes(changed), member) for member in range(MEMBERS)]
    changed[start:end] = struct.pack(f"<{MEMBERS}q", *sums)
    return bytes(changed)


def _rows(header: dict[str, Any], body: bytes, name: str, member: int) -> bytes:
    start, end = header[name]["data_offsets"]
    size = (end - start) // header[name]["shape"][0]
    return body[start + member * size : start + (member + 1) * size]


def _checksum(header: dict[str, Any], body: bytes, member: int) -> int:
    value = 0
    for name in MATRICES:
        value = zlib.crc32(_rows(header, body, name, member), value)
    return value


def _compare(data: bytes, population: Population, rows: slice) -> None:
    """What was loaded against the file's bytes, and these against their checksums."""
    header, body = split(data)
    numbers = range(header["weights_MP"]["shape"][0])[rows]
    if population.members != len(numbers):
        raise Finding(f"{population.members} members were loaded, of {len(numbers)}")
    for place, member in enumerate(numbers):
        for name in MATRICES:
            if getattr(population, name)[place].numpy().tobytes() != _rows(header, body, name, member):
                raise Finding(f"{name} of member {member} is not the file's")
        (stored,) = struct.unpack("<q", _rows(header, body, "checksum_M", member))
        if stored != _checksum(header, body, member):
            raise Finding(f"member {member} was loaded against its checksum")
    _named_bytes(population.state_dict(0), population.momentum(0))  # each a tensor under a name
