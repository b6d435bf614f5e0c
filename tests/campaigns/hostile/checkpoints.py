"""Damaged and crafted checkpoints, and pickles under a checkpoint's name."""

import json
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.digits import load_digits
from fastwi.population import Layout, Population
from fastwi.population.layout import MATRICES
from fastwi.population.state_file import read_state_file, save_state_dict
from hostile.mutate import TEXTS, damaged, damaged_text, number
from hostile.target import Finding, accepted, odd_file

MEMBERS = 3


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
    """`Population.load`, also of one member."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        images_NHWC = torch.from_numpy(load_digits("digits").train.images_NHWC[:64, ::2, ::2].copy())
        for place, module in enumerate(networks()):
            population = Population.from_modules([module] * MEMBERS)
            if place:  # a few steps on real digits, so that statistics and counters are not all zeros
                module(images_NHWC.permute(0, 3, 1, 2).float() / 255).sum().backward()
                population = Population.from_modules([module] * MEMBERS)
            population.momentum_MP.copy_(population.weights_MP * 0.5)
            population.save(directory / f"{place}.safetensors")
        state = networks()[0].state_dict()
        save_state_dict(state, directory / "dict.safetensors")
        save_state_dict(state, directory / "dict.pt")
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
            directory / "wrapped.pt",
        )

    def __init__(self, corpus: Path) -> None:
        self._files = [(corpus / f"{place}.safetensors").read_bytes() for place in range(2)]
        self._dicts = [(corpus / name).read_bytes() for name in ("dict.safetensors", "dict.pt", "wrapped.pt")]
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
        if draw.random() < 0.25:
            return _state_file(path, work)
        layout = draw.choice((None, None, *self._layouts))
        if draw.random() < 0.5:
            member = draw.choice((0, 0, 1, 2, 3, 10**6))
            rows = slice(member, member + 1)
            population = accepted(lambda: Population.load(path, layout, member=member))
        else:
            rows = slice(None)
            population = accepted(lambda: Population.load(path, layout))
        if (work / "EXECUTED").exists():
            raise Finding("a pickle was executed")
        if population is not None:
            _compare(path.read_bytes(), population, rows)
        return population is not None


def _state_file(path: Path, work: Path) -> bool:
    """The file as an ordinary state dict, or as a member of a population."""
    state = accepted(lambda: read_state_file(path))
    if (work / "EXECUTED").exists():
        raise Finding("a pickle was executed")
    if state is None:
        return False
    _check_tensors(state.tensors)
    _check_tensors(state.momentum)
    if len(state.digest) != 64:
        raise Finding("no digest")
    return True


def _check_tensors(state: dict[str, Any]) -> None:
    if not all(isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()):
        raise Finding("a state dict of other things than tensors")


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


def _joined(header: str, body: bytes) -> bytes:
    text = header.encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _crafted(draw: random.Random, data: bytes) -> bytes:
    """A header that says other things than the file is, or other values under right checksums."""
    header, body = split(data)
    tensors = [name for name in header if name != "__metadata__"]
    metadata = header["__metadata__"]
    kind = draw.randrange(7)
    told, first = header[draw.choice(tensors)], header[tensors[0]]
    if kind == 0:
        return _joined(damaged_text(draw, json.dumps(header), (*tensors, "F32", "BF16", '"shape":[]', ",")), body)
    if kind == 1:
        key = draw.choice(("data_offsets", "shape", "dtype"))
        if key == "dtype":
            told[key] = draw.choice(("F64", "I64", "BF16", "F16", "U8", "BOOL", "F8_E4M3", "C64", "x", "", 7, None))
        elif told[key] and draw.random() < 0.8:
            place = draw.randrange(len(told[key]))
            told[key][place] = draw.choice((number(draw, 8, told[key][place]), -1, 0.5, "1", None, [], 10**30))
        else:
            told[key] = draw.choice(([], told[key] * 2, told[key][:1], [0] * 9, [1] * 500))
    elif kind == 2:
        name, choice = draw.choice(tensors), draw.randrange(4)
        if choice == 0:
            del header[name]
        elif choice == 1:
            header[draw.choice(TEXTS)] = header[name]
        elif choice == 2:
            header[name], header[tensors[0]] = first, header[name]
        else:
            header[name]["data_offsets"] = first["data_offsets"]
    elif kind == 3:
        key = draw.choice(list(metadata))
        metadata[key] = draw.choice((*TEXTS, None, 5, [], {"a": "b"}, damaged_text(draw, metadata[key])))
    elif kind == 4:
        metadata["layout"] = _sealed_layout(draw, metadata["layout"])
    elif kind == 5:
        body = draw.choice((b"", body[:-1], body + b"\0", damaged(draw, body)))
    else:
        body = _other_values(draw, header, body)
    return _joined(json.dumps(header), body)


def _sealed_layout(draw: random.Random, text: str) -> str:
    """A layout of other sizes that matches its own fingerprint, as far as it can be reckoned."""
    told = json.loads(text)
    groups = [group for group in ("parameters", "statistics", "counters") if told[group]]
    for _ in range(draw.randrange(1, 3)):
        spans = told[draw.choice(groups)]
        span = draw.choice(spans)
        place = draw.randrange(3)
        if place == 1:
            sizes = draw.choice((-1, 0, 2**31, 2**40, 2**62, 10**30, "3", 1.5, None, True))
            span[1] = draw.choice(([sizes], [sizes] * 4, [*span[1], sizes], [1] * 200, [], "12"))
        elif place == 2:
            span[2] = draw.choice((True, False, 1, "x", None))
        else:
            span[0] = draw.choice((*TEXTS, 5, None, spans[0][0]))
    try:
        layout = Layout._pack(told["parameters"], told["statistics"], told["counters"], told["keys"])
        told["fingerprint"] = layout.fingerprint
    except Exception:  # it cannot even be packed; the old fingerprint stays
        pass
    return json.dumps(told)


def _other_values(draw: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """Random bits, NaNs among them, in every matrix, with checksums that fit: a valid file."""
    changed = bytearray(body)
    for name in MATRICES:
        start, end = header[name]["data_offsets"]
        for _ in range(4):
            if end > start:
                place = draw.randrange(start, end) & ~7
                changed[place : place + 8] = draw.choice((draw.randbytes(8), b"\xff" * 8, b"\x01\0\xa0\x7f" * 2))[
                    : end - place
                ]
    start, _ = header["checksum_M"]["data_offsets"]
    for member in range(MEMBERS):
        changed[start + 8 * member : start + 8 * member + 8] = struct.pack(
            "<q", _checksum(header, bytes(changed), member)
        )
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
    _check_tensors(population.state_dict(0))
    _check_tensors(population.momentum(0))
