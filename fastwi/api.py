"""Interpolate and average networks: modules, populations, state dicts, files of state dicts or lists of tensors.

Floating-point tensors (weights, and batch-norm statistics with them) are averaged, integer tensors
(num_batches_tracked) become the maximum over the networks whose weight is not zero, and tensors that a network ties
stay tied and are averaged once. Whether averaged statistics are the right ones is the caller's choice.
"""

import copy
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from fastwi.config.averaging import momentum_weights
from fastwi.kernels.combine import weighted_sum
from fastwi.kernels.interpolate import lerp_lists_
from fastwi.population import Population
from fastwi.population.layout import first_overlap
from fastwi.population.population import require_equal_constants
from fastwi.population.state_file import load_state_dict

Network = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
State = Mapping[str, Tensor] | str | os.PathLike[str]
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
Place = tuple[torch.dtype, int, tuple[int, ...], tuple[int, ...]]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def interpolate_(
    a: Population | Network,
    b: Population | Network | None = None,
    alpha: float | Sequence[float] | Tensor = 0.5,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    momentum: str = "reset",
) -> None:
    """Overwrite `a` with (1 - alpha) a + alpha b, without a copy of either.

    Two modules, two state dicts or two lists of tensors of the same shapes, or populations: `pairs` lists
    (row of a, row of b); without `b` both count in `a`, and without `pairs` member m of `b` goes with member
    m of `a`. alpha: any finite number, for populations also one a pair; 0 leaves a as it is to the bit and 1
    gives b to the bit. `momentum`: of a population's interpolated rows (see `Population.lerp_rows_`).

    Raises ValueError naming the first tensor that is missing, unknown or of another shape or dtype, and UserError for
    modules that differ in what no state dict holds (non-persistent buffers): pass state dicts to leave it out.
    """
    if isinstance(a, Population):
        if b is not None and not isinstance(b, Population):
            raise ValueError(f"a population can be interpolated with a population, not with a {type(b).__name__}")
        if pairs is None:
            if b is None or b.members != a.members:
                raise ValueError("give pairs=[(row of a, row of b), ...] or two populations of as many members")
            pairs = [(m, m) for m in range(a.members)]
        a.lerp_rows_(pairs, alpha, other=b, momentum=momentum)
        return
    if pairs is not None or b is None or isinstance(b, Population):
        raise ValueError("rows and pairs are for populations; two networks are needed otherwise")
    momentum_weights(momentum, ())  # which refuses another, though networks have none
    weight = float(cast(float, alpha))
    matched = _matched([_named(a), _named(b)])
    _require_equal_constants([a, b])
    tensors = _distinct(matched)
    floats = [both for both in tensors.values() if both[0].is_floating_point()]
    for name, (mine, _) in tensors.items():
        # torch's lerp does not know these, and would find out after others were written.
        if mine.is_floating_point() and mine.itemsize == 1:
            raise ValueError(f"{name!r} has dtype {mine.dtype}, which is not interpolated in place; use average")
    lerp_lists_([mine for mine, _ in floats], [theirs for _, theirs in floats], weight)
    for mine, theirs in tensors.values():
        if not mine.is_floating_point():
            mine.copy_(_largest([mine, theirs], [1.0 - weight, weight]))


@overload
def average(
    network: Population, /, *, weights: Sequence[float] | None = None, rows: Sequence[int] | None = None
) -> Population: ...


@overload
def average(*networks: ModuleT | Sequence[ModuleT], weights: Sequence[float] | None = None) -> ModuleT: ...


@overload
def average(*networks: State | Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]: ...


@torch.no_grad()
def average(*networks: Any, weights: Sequence[float] | None = None, rows: Sequence[int] | None = None) -> Any:
    """The sum of weight x network, as something new of the same kind; the networks stay as they are.

    Args:
        networks: one by one or as one list. Modules (the result is a copy of the first with the average in it); state
            dicts, or paths of files that `fastwi.load_state_dict` reads (a new dict); or one population (a
            population of one member, its momentum zero).
        weights: one a network, any finite values, used as they are; the plain mean where left out. Summed in float64
            and rounded once, so that the result is the same on every machine.
        rows: the members of the population to average; all where left out.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape or dtype, or that the first
            of several modules ties and another does not.
        CheckpointError: for a file that is not a state dict.
        UserError: for modules that differ in what no state dict holds (non-persistent buffers): pass state dicts.
    """
    if len(networks) > 1 and any(isinstance(each, Population) or _is_list_of_others(each) for each in networks):
        raise ValueError("give networks one by one or as a list, a population alone, weights by name: weights=[...]")
    if len(networks) == 1 and isinstance(networks[0], Population):
        population = networks[0]
        chosen = list(range(population.members)) if rows is None else list(rows)
        return Population.averages([[(population, row) for row in chosen]], [_weights(weights, len(chosen))])
    if rows is not None:
        raise ValueError("rows is for one population; pass the chosen networks themselves")
    if len(networks) == 1 and isinstance(networks[0], Sequence) and not isinstance(networks[0], str):
        networks = tuple(networks[0])
    shares = _weights(weights, len(networks))
    networks = tuple(load_state_dict(each) if isinstance(each, (str, os.PathLike)) else each for each in networks)
    tensors = _matched([_named(network) for network in networks])
    _require_equal_constants(networks)
    means: dict[tuple[Place, ...], Tensor] = {}  # by place in memory, so that tied tensors stay tied
    result = {}
    for name, group in tensors.items():
        tie = tuple(_place(tensor) for tensor in group)
        if tie not in means:
            means[tie] = weighted_sum(group, shares) if group[0].is_floating_point() else _largest(group, shares)
        result[name] = means[tie]
    if not isinstance(networks[0], nn.Module):
        return result
    module = copy.deepcopy(networks[0])
    named = _named(module)
    for name, tensor in named.items():
        tensor.copy_(result[name])
    _require_written(named, result)
    return module


def _require_written(named: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a tensor is not its value, as one that it shares memory with has been written since."""
    storages = {name: tensor.untyped_storage().data_ptr() for name, tensor in named.items() if tensor.numel()}
    shared = Counter(storages.values())
    for name, storage in storages.items():
        tensor, value = named[name], values[name].to(named[name].device)
        alike = shared[storage] == 1 or bool(((tensor == value) | ((tensor != tensor) & (value != value))).all())
        if not alike:  # NaN is alike
            other = next(each for each, place in storages.items() if place == storage and each != name)
            raise ValueError(
                f"network 0 ties {name!r} and {other!r}, others do not, and the averages differ; pass state dicts"
            )


def _is_list_of_others(given: Any) -> bool:
    """Whether it is a list, and not that of a network's tensors."""
    return isinstance(given, (list, tuple)) and not all(isinstance(each, Tensor) for each in given)


def _named(network: Network) -> dict[str, Tensor]:
    """The live tensors of a network by state-dict key, or by place in a list."""
    if isinstance(network, nn.Module):
        named: Mapping[str, Any] = network.state_dict(keep_vars=True)
        own = {_place(tensor) for tensor in (*network.parameters(), *network.buffers())}
        for name, each in named.items():
            if not isinstance(each, Tensor) or _place(each) not in own:  # writing to a hook's copy changes nothing
                raise ValueError(f"state dict entry {name!r} is neither a parameter nor a buffer; pass state dicts")
    elif isinstance(network, Mapping):
        named = network
    elif isinstance(network, Sequence):
        named = {f"[{place}]": tensor for place, tensor in enumerate(network)}
    else:
        raise ValueError(f"a network is a module, a state dict or a list of tensors, not a {type(network).__name__}")
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} is a {type(tensor).__name__}, not a tensor; take it out of the state dict")
        if not tensor.is_floating_point() and tensor.dtype not in _INTEGERS:
            raise ValueError(f"{name!r} has dtype {tensor.dtype}, which is not averaged here; convert it")
    return dict(named)


def _require_equal_constants(networks: Sequence[Network]) -> None:
    modules = [(place, network) for place, network in enumerate(networks) if isinstance(network, nn.Module)]
    for place, module in modules[1:]:
        require_equal_constants(modules[0][1], module, place)


def _matched(networks: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    """The networks' tensors side by side, in the first one's order."""
    first = networks[0]
    for place, network in enumerate(networks[1:], start=1):
        for name in [*first, *(name for name in network if name not in first)]:
            if name not in network or name not in first:
                lacks, has = (place, 0) if name in first else (0, place)
                raise ValueError(f"network {lacks} lacks {name!r}, which network {has} has")
            mine, theirs = first[name], network[name]
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise ValueError(
                    f"{name!r} is {mine.dtype} {tuple(mine.shape)} in network 0 and "
                    f"{theirs.dtype} {tuple(theirs.shape)} in network {place}"
                )
    return {name: [network[name] for network in networks] for name in first}


def _distinct(pairs: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """`pairs` with each tensor that network 0 ties listed once: interpolating it twice would be wrong."""
    seen: dict[Place, tuple[str, int]] = {}
    distinct = {}
    for name, (mine, theirs) in pairs.items():
        place = _place(mine)
        if mine.numel() and place in seen:
            tied_to, their_place = seen[place]
            if theirs.data_ptr() != their_place:
                raise ValueError(f"network 0 ties {tied_to!r} and {name!r}, network 1 does not")
            continue
        seen[place] = (name, theirs.data_ptr())
        distinct[name] = [mine, theirs]
    overlap = first_overlap({name: mine for name, (mine, _) in distinct.items()})
    if overlap:
        raise ValueError(
            f"network 0's {overlap[0]!r} and {overlap[1]!r} share a part of their memory; copy one of them"
        )
    return distinct


def _place(tensor: Tensor) -> Place:
    """Where a tensor's elements are: the same for two tensors that are one."""
    return tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _weights(weights: Sequence[float] | None, networks: int) -> list[float]:
    """One finite weight a network; 1 / n each where left out."""
    if networks == 0:
        raise ValueError("an average needs at least one network")
    shares = [1.0 / networks] * networks if weights is None else [float(weight) for weight in weights]
    if len(shares) != networks or not all(math.isfinite(share) for share in shares):
        raise ValueError(f"{len(shares)} weights for {networks} networks; it takes one finite number each")
    return shares


def _largest(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The element-wise maximum over the tensors whose share is not zero (zeros where there is none)."""
    first = tensors[0]
    counted = [tensor.to(first.device) for tensor, share in zip(tensors, shares, strict=True) if share != 0.0]
    return torch.stack(counted).amax(0) if counted else torch.zeros_like(first)
