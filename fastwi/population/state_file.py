"""Ordinary state dicts on disk: read safely, unwrapped, written whole or not at all.

torch's own files are read with weights_only=True, so that reading one never runs code from it.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastwi.errors import CheckpointError, UserError
from fastwi.files import atomic_open, open_plain
from fastwi.population.checkpoint import FORMAT as POPULATION_FORMAT
from fastwi.population.population import Population

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts file the state dict, beside optimizer, epoch and the like."""

_MOMENTUM = "momentum"
_MOVING = f"{_MOMENTUM}."  # before the names of momentum, in a safetensors file
# What DataParallel, DistributedDataParallel, AveragedModel and torch.compile put before every name.
_PREFIXES = re.compile(r"(module\.|_orig_mod\.)*")
_AVERAGED = "n_averaged"  # AveragedModel's own counter, beside the network
_FORMAT = "fastwi.state_dict"
_TORCH_ENDINGS = (".pt", ".pth")
_DEEPEST = 4  # wrappers within wrappers


@dataclass(frozen=True, eq=False)
class StateFile:
    """What a file holds of one network.

    `tensors`: the state dict, on the CPU. `momentum`: by parameter name, where the file has it. `notes`: what was
    removed around them, one line each.
    """

    path: Path
    tensors: dict[str, Tensor]
    momentum: dict[str, Tensor]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of names, dtypes, shapes and values of the state dict, in the order of the names.

        The same for the same tensors in any file format, wrapper or prefix; momentum is not in it.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def copy_into(self, population: Population, m: int) -> None:
        """Overwrite member m of `population`, and its momentum with the file's, or with zero where it has none.

        Raises CheckpointError, in one line, naming the first key that is missing, unknown or of another shape.
        """
        mine = _prefix(key for key, _ in population.layout.keys)
        try:
            population.load_state_dict(m, {mine + name: tensor for name, tensor in self.tensors.items()})
            momentum = population.momentum(m)
            for name, tensor in self.momentum.items():
                if mine + name not in momentum or momentum[mine + name].shape != tensor.shape:
                    raise ValueError(
                        f"the momentum of {mine + name!r} belongs to no parameter of that name and shape"
                    )
                momentum[mine + name].copy_(tensor)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}; name the network that wrote it") from None


def read_state_file(path: str | os.PathLike[str], member: int | None = None) -> StateFile:
    """Read one network: from a state dict (torch's or a safetensors file) or a member of a population checkpoint.

    Wrappers (`WRAPPERS`) and the prefixes `module.` and `_orig_mod.` that all names have are removed, and noted.
    `member` picks from a population of several; a state dict has none.

    Raises CheckpointError, in one line, for a file that is missing, damaged, holds anything but tensors by name, or
    holds several networks.
    """
    path = Path(path)
    try:
        with open_plain(path) as stream:  # a named pipe would wait for ever
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); name a state dict") from None
    # safetensors has the length of a JSON header, then the header.
    kind, found = _read_safetensors(path) if start[8:] == b"{" else (None, _read_torch(path))
    if kind == POPULATION_FORMAT:
        population = read_member(path, member)
        return _stripped(path, population.state_dict(0), population.momentum(0), [])
    if member not in (None, 0):
        raise CheckpointError(f"{path}: holds one network, without a member {member}; leave the member out")
    momentum: Mapping[str, Any] = {}
    notes: list[str] = []
    if kind == _FORMAT:
        momentum = {name.removeprefix(_MOVING): found[name] for name in found if name.startswith(_MOVING)}
        found = {name: found[name] for name in found if not name.startswith(_MOVING)}
    for _ in range(_DEEPEST):
        inside = [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]
        if len(inside) > 1:
            raise CheckpointError(f"{path}: holds {' and '.join(inside)}; save one of them by itself")
        if not inside:
            break
        left = {str(key): value for key, value in found.items() if key != inside[0]}
        if isinstance(left.get(_MOMENTUM), Mapping):
            momentum = left.pop(_MOMENTUM)
        notes.append(f"read from {inside[0]!r}" + (f"; left out: {', '.join(left)}" if left else ""))
        found = found[inside[0]]
    return _stripped(path, _tensors(path, found), _tensors(path, momentum) if momentum else {}, notes)


def load_state_dict(path: str | os.PathLike[str], member: int | None = None) -> dict[str, Tensor]:
    """The state dict in a file: torch's (.pt, read without running code), safetensors, or a fastwi checkpoint.

    Tensors are on the CPU, in the file's dtypes. Wrappers such as {"state_dict": ...} and the prefixes `module.` and
    `_orig_mod.` that all names have are removed. `member` picks from a checkpoint of several.

    Raises CheckpointError, in one line, for a file that is missing, damaged, or holds anything but tensors by name.
    """
    return read_state_file(path, member).tensors


def read_member(path: str | os.PathLike[str], member: int | None = None) -> Population:
    """Member `member` of a population checkpoint as a population of 1; its only one where `member` is left out.

    Raises CheckpointError as `Population.load` does, and where there are several.
    """
    population = Population.load(path, member=member)
    if len(population) > 1:
        raise CheckpointError(
            f"{path}: holds {len(population)} members; take one: "
            f"python -m fastwi.convert export {path} --member 0 --out FILE"
        )
    return population


def save_state_dict(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], momentum: Mapping[str, Tensor] | None = None
) -> None:
    """Write a state dict to `path`, by its ending: .safetensors, or .pt or .pth for torch.save. Whole or not at all.

    Tensors are written as contiguous copies on the CPU. With `momentum` (by parameter name) a torch file holds
    {"state_dict": ..., "momentum": ...}, and a safetensors file the tensors `momentum.NAME` beside the others.

    Raises UserError for another ending, for what is not a tensor, and where the disk is full or not writable.
    """
    path = Path(path)
    plain, moving = (_copies(path, each) for each in (state, momentum or {}))
    if path.suffix in _TORCH_ENDINGS:
        buffer = io.BytesIO()
        torch.save(plain if momentum is None else {"state_dict": plain, _MOMENTUM: moving}, buffer)
        data = buffer.getvalue()
    elif path.suffix == ".safetensors":
        clash = next((name for name in plain if momentum is not None and name.startswith(_MOVING)), None)
        if clash is not None:
            raise UserError(f"{path}: {clash!r} would be read as momentum; write a .pt file")
        plain |= {_MOVING + name: tensor for name, tensor in moving.items()}
        data = safetensors.torch.save(plain, {"format": "pt" if momentum is None else _FORMAT})
    else:
        raise UserError(f"{path}: is neither .safetensors nor {' nor '.join(_TORCH_ENDINGS)}; give it such a name")
    with atomic_open(path) as stream:
        stream.write(data)


def _copies(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor; take it out")
        copies[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copies


def _read_safetensors(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    """The file's format as its metadata has it, and its tensors; none of a population."""
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format")
            names = [] if kind == POPULATION_FORMAT else file.keys()
            return kind, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({reason}); write it again") from None


def _read_torch(path: Path) -> Mapping[str, Any]:
    """What torch.save wrote: tensors and plain containers; anything else is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a foreign file raises whatever the file makes it
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is not None:
            problem = f"holds a {refused.group(1)}, not only tensors, and loading it could run code"
        else:
            reason = " ".join(str(error).split("\n")[0].split())[:120]
            problem = f"not a state dict that torch.save or safetensors wrote ({type(error).__name__}: {reason})"
        raise CheckpointError(f"{path}: {problem}; save network.state_dict() instead") from None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not a state dict; save network.state_dict()")
    return found


def _tensors(path: Path, found: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in found.items():
        dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
        if not isinstance(name, str) or not dense or value.is_meta:
            problem = f"{name!r} is a {type(value).__name__}, not a dense tensor under a name"
            raise CheckpointError(f"{path}: {problem}; save network.state_dict() instead")
        tensors[name] = value.detach()
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor; save network.state_dict()")
    return tensors


def _stripped(path: Path, tensors: dict[str, Tensor], momentum: dict[str, Tensor], notes: list[str]) -> StateFile:
    """The state file without the prefix that all names have."""
    prefix = _prefix(name for name in tensors if name != _AVERAGED)
    if prefix:
        notes = [*notes, f"prefix {prefix!r} removed"]
        if tensors.pop(_AVERAGED, None) is not None:
            notes.append(f"{_AVERAGED!r} left out")
    tensors, momentum = (
        {name.removeprefix(prefix): tensor for name, tensor in each.items()} for each in (tensors, momentum)
    )
    return StateFile(path, tensors, momentum, tuple(notes))


def _prefix(names: Iterable[str]) -> str:
    """The prefixes that all names begin with, one after another."""
    common = os.path.commonprefix(list(names))  # noqa: RUF071  character by character is what is meant
    found = _PREFIXES.match(common)
    return found.group() if found else ""
