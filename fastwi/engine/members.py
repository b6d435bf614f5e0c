"""A function of one network, applied to each of M: one after the other, or all at once by torch.func.vmap.

A batched operation may sum in another order for another M; one after the other, results are the same whatever M is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Tensors = Mapping[str, Tensor]  # parameters and buffers by name, [M, *shape] each
Apply = Callable[..., Any]  # (function, *arguments): tensors are [M, ...], anything else is the same for all members


def one_by_one(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` of each member's arguments in turn; its tensors stacked."""
    flat, spec = pytree.tree_flatten(arguments)
    parts = [_split(leaf) if isinstance(leaf, Tensor) else None for leaf in flat]
    members = next(len(part) for part in parts if part is not None)
    results = []
    for m in range(members):
        own = [leaf if part is None else part[m] for leaf, part in zip(flat, parts, strict=True)]
        results.append(function(*pytree.tree_unflatten(own, spec)))
    return pytree.tree_map(lambda *own: torch.stack(own) if isinstance(own[0], Tensor) else own[0], *results)


def by_vmap(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` of all members at once."""
    at = pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arguments)
    with _DenseGroupNorm():
        return torch.func.vmap(function, at)(*arguments)


def dense_buffers(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors with buffers in dense memory: vmap's batch norm would update a copy of what is not dense."""
    return {name: value if value.requires_grad else value.contiguous() for name, value in tensors.items()}


def write_back(dense: Tensors, tensors: Tensors) -> None:
    """Copy what `dense_buffers` copied back to where it came from."""
    for name, value in tensors.items():
        if dense[name] is not value:
            value.copy_(dense[name])


def _split(tensor: Tensor) -> Sequence[Tensor]:
    """Each member's tensor, for functions that may change it in place."""
    if tensor.requires_grad and torch.is_grad_enabled():
        parts: tuple[Tensor, ...] = _Split.apply(tensor)
        return parts
    return [part.detach() for part in tensor]


class _Split(torch.autograd.Function):
    """Copies: autograd refuses changes in place to unbind's views, and counts those to one memory as one."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.clone() for part in tensor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.stack(gradients)


class _DenseGroupNorm(TorchFunctionMode):
    """vmap takes no channels-last input for a group norm."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.group_norm, torch.group_norm) and isinstance(args[0], Tensor):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))
