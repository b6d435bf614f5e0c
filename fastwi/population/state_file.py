"""Ordinary state dicts on disk: read safely, unwrapped, written whole or not at all.

torch's own files are read with weights_only=True, so that reading one never runs code from it.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastwi.errors import CheckpointError, UserError
from fastwi.files import atomic_open
from fastwi.population import checkpoint
from fastwi.population.population import Population

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts file the state dict, beside optimizer, epoch and the like."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel, DistributedDataParallel, AveragedModel and torch.compile put before every name."""

MOMENTUM = "momentum"
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
    momentum: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
        mine, _ = _split_prefix([key for key, _ in population.layout.keys])
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

    Wrappers (`WRAPPERS`) and prefixes that all names have (`PREFIXES`) are removed, and noted. `member` picks from
    a population of several; a state dict has none.

    Raises CheckpointError, in one line, for a file that is missing, damaged, holds anything but tensors by name, or
    holds several networks.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a named pipe would wait for ever
        raise CheckpointError(f"{path}: not a regular file; name a state dict")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); name a state dict") from None
    if start[8:] != b"{":  # safetensors has the length of a JSON header, then the header
        return _unwrapped(path, _read_torch(path), member)
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format")
            if kind == checkpoint.FORMAT:
                population = read_member(path, member)
                momentum = {name: tensor.clone() for name, tensor in population.momentum(0).items()}
                return _stripped(path, population.state_dict(0), momentum, [])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({reason}); write it again") from None
    if kind != _FORMAT:
        return _unwrapped(path, found, member)
    start_of = f"{MOMENTUM}."
    momentum = {name.removeprefix(start_of): found.pop(name) for name in list(found) if name.startswith(start_of)}
    return _unwrapped(path, {"state_dict": found, MOMENTUM: momentum}, member, quiet=True)


def load_state_dict(path: str | os.PathLike[str], member: int | None = None) -> dict[str, Tensor]:
    """The state dict in a file: torch's (.pt, read without running code), safetensors, or a fastwi checkpoint.

    Tensors are on the CPU, in the file's dtypes. Wrappers such as {"state_dict": ...} and the prefixes `module.` and
    `_orig_mod.` that all names have are removed. `member` picks from a checkpoint of several.

    Raises CheckpointError, in one line, for a file that is missing, damaged, or holds anything but tensors by name.
    """
    return read_state_file(path, member).tensors


def read_member(path: str | os.PathLike[str], member: int | None = None) -> Population:
    """Member `member` of a population checkpoint as a population of 1; its only one where `member` is left out.

    Raises CheckpointError as `fastwi.population.checkpoint.load` does, and where there are several.
    """
    population = checkpoint.load(path, member=member or 0)
    if member is None:
        with safe_open(path, framework="pt") as file:
            members = file.get_slice("weights_MP").get_shape()[0]
        if members > 1:
            raise CheckpointError(
                f"{path}: holds {members} members; take one: "
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
    for name, value in (*state.items(), *(momentum or {}).items()):
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor; take it out")
    plain = _copies(state)
    if path.suffix in _TORCH_ENDINGS:
        buffer = io.BytesIO()
        torch.save(plain if momentum is None else {"state_dict": plain, MOMENTUM: _copies(momentum)}, buffer)
        data = buffer.getvalue()
    elif path.suffix == ".safetensors":
        metadata = {"format": "pt" if momentum is None else _FORMAT}
        clash = next((name for name in plain if momentum is not None and name.startswith(f"{MOMENTUM}.")), None)
        if clash is not None:
            raise UserError(f"{path}: {clash!r} would be read as momentum; write a .pt file")
        plain |= {f"{MOMENTUM}.{name}": tensor for name, tensor in _copies(momentum or {}).items()}
        data = safetensors.torch.save(plain, metadata)
    else:
        raise UserError(f"{path}: is neither .safetensors nor {' nor '.join(_TORCH_ENDINGS)}; give it such a name")
    with atomic_open(path) as stream:
        stream.write(data)


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }


def _read_torch(path: Path) -> Mapping[str, Any]:
    """What torch.save wrote: tensors and plain containers; anything else is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a foreign file raises whatever the file makes it
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is not None:
            raise CheckpointError(
                f"{path}: holds a {refused.group(1)}, not only tensors, and loading it could run code; "
                "save network.state_dict() instead"
            ) from None
        reason = " ".join(str(error).split("\n")[0].split())[:120]
        raise CheckpointError(
            f"{path}: not a state dict that torch.save or safetensors wrote ({type(error).__name__}: {reason}); "
            "save network.state_dict() instead"
        ) from None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not a state dict; save network.state_dict()")
    return found


def _unwrapped(path: Path, found: Mapping[str, Any], member: int | None, quiet: bool = False) -> StateFile:
    """`found` without wrappers and prefixes, once it is known to be a state dict."""
    if member not in (None, 0):
        raise CheckpointError(f"{path}: holds one network, without a member {member}; leave the member out")
    notes: list[str] = []
    momentum: dict[str, Tensor] = {}
    for _ in range(_DEEPEST):
        inside = [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]
        if not inside:
            break
        if len(inside) > 1:
            raise CheckpointError(f"{path}: holds {' and '.join(inside)}; save one of them by itself")
        rest = [str(key) for key in found if key != inside[0]]
        if isinstance(found.get(MOMENTUM), Mapping):
            momentum = _tensors(path, found[MOMENTUM])
            rest.remove(MOMENTUM)
        left = f"; left out: {', '.join(rest)}" if rest else ""
        notes += [] if quiet else [f"read from {inside[0]!r}{left}"]
        found = found[inside[0]]
    return _stripped(path, _tensors(path, found), momentum, notes)


def _tensors(path: Path, found: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in found.items():
        problem = None
        if not isinstance(name, str):
            problem = "is not the name of a tensor"
        elif not isinstance(value, Tensor):
            problem = f"is a {type(value).__name__}, not a tensor"
        elif value.layout is not torch.strided or value.is_quantized or value.is_meta:
            problem = "is not a dense tensor"
        if problem is not None:
            raise CheckpointError(f"{path}: {name!r} {problem}; save network.state_dict() instead")
        tensors[name] = value.detach()
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor; save network.state_dict()")
    return tensors


def _stripped(path: Path, tensors: dict[str, Tensor], momentum: dict[str, Tensor], notes: list[str]) -> StateFile:
    """The state file without the prefix that all names have."""
    if _AVERAGED in tensors and _split_prefix(name for name in tensors if name != _AVERAGED)[0]:
        notes = [*notes, f"{_AVERAGED!r} left out"]
        tensors = {name: tensor for name, tensor in tensors.items() if name != _AVERAGED}
    prefix, names = _split_prefix(tensors)
    if prefix:
        notes = [*notes, f"prefix {prefix!r} removed"]
    momentum = {name.removeprefix(prefix): tensor for name, tensor in momentum.items()}
    return StateFile(path, dict(zip(names, tensors.values(), strict=True)), momentum, tuple(notes))


def _split_prefix(names: Iterable[str]) -> tuple[str, list[str]]:
    """The prefixes of `PREFIXES` that all names begin with, one after another, and the names without."""
    rest, prefix = list(names), ""
    for _ in range(_DEEPEST):
        common = next((each for each in PREFIXES if rest and all(name.startswith(each) for name in rest)), None)
        if common is None:
            break
        prefix, rest = prefix + common, [name.removeprefix(common) for name in rest]
    return prefix, rest
