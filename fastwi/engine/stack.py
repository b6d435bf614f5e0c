"""Runs M members of any network at once: its traced graph, each layer batched over the member axis.

Convolutions, batch norm with its residual sum and ReLU, linear layers, sums and means have rules of their own, on
activations [M, N, H, W, C]. A batch norm between two convolutions is never stored: its statistics come from the first
convolution's epilogue, and the second one applies it while it reads. Every other operation is applied to each member
(see `fastwi.engine.members`), on [M, N, C, H, W].

Shapes: M members, N images of a batch, C channels, H height, W width, F features, K classes.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fastwi.engine.fuse import fuse_batch_norm, trace
from fastwi.engine.members import Apply, Tensors, by_vmap, dense_buffers, one_by_one, write_back
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.shortcut import shortcut
from fastwi.kernels.stacked import Norm, stacked_batch_norm, stacked_conv


@dataclass(frozen=True)
class Images:
    """An activation of M networks, stored [M, N, H, W, C]. `moments` are its statistics, where they are known."""

    x_MNHWC: Tensor
    moments: Tensor | None = None

    @property
    def x_MNCHW(self) -> Tensor:
        """The same as [M, N, C, H, W], without a copy."""
        return self.x_MNHWC.permute(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class Pending:
    """A batch norm (and ReLU) of an activation that is left to the convolution that reads it."""

    x: Images
    norm: Norm


Value = Any  # Images, a tensor [M, ...], or what an fx graph has besides: numbers, tuples, None


class StackedNetwork:
    """M networks of one architecture as one function of stacked tensors. Holds no weights.

    With `exact` a member's result is the same bit for bit whatever M is: what has no kernel that guarantees it is run
    for one member after the other.
    """

    def __init__(self, traced: fx.GraphModule, exact: bool) -> None:
        self.traced, self._exact = traced, exact
        self._apply: Apply = one_by_one if exact else by_vmap
        self._modules = dict(traced.named_modules())
        self._last_use = _last_uses(traced.graph)
        convolutions = {n for n in traced.graph.nodes if _is_convolution(n, self._modules)}
        norms = {n for n in traced.graph.nodes if n.op == "call_module" and _is_norm(self._modules[str(n.target)])}
        # Convolutions whose output only a batch norm reads, and batch norms whose output only a convolution does.
        self._measured = {n for n in convolutions if set(n.users) <= norms}
        self._left = {n for n in norms if len(n.args) == 1 and len(n.users) == 1 and set(n.users) <= convolutions}

    @classmethod
    def of(cls, model: nn.Module, exact: bool) -> "StackedNetwork | None":
        """The stacked form of `model`; None where torch.fx cannot trace it (see `trace`)."""
        traced = fuse_batch_norm(model) or trace(model)
        return None if traced is None else cls(traced, exact)

    def __call__(self, tensors: Tensors, x_MNHWC: Tensor, training: bool) -> Tensor:
        """Logits [M, N, K] in float32. Running statistics in `tensors` are updated in place where `training`."""
        values: dict[fx.Node, Value] = {}
        for node in self.traced.graph.nodes:
            arguments = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = self._run(node, *arguments, tensors, x_MNHWC, training)
            for dead in self._last_use.get(node, ()):
                del values[dead]
            if node.op == "output":
                logits_MNK: Tensor = values[node]
                return logits_MNK.float()
        raise AssertionError("an fx graph ends in an output")

    def _run(self, node: fx.Node, args: Any, kwargs: Any, tensors: Tensors, x_MNHWC: Tensor, training: bool) -> Value:
        if node.op == "placeholder":
            return Images(x_MNHWC)
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return tensors[str(node.target)]
        if node.op == "call_module":
            return self._call_module(node, args, kwargs, tensors, training)
        if node.op == "call_method":
            return self._mapped(lambda x, *rest, **more: getattr(x, str(node.target))(*rest, **more), args, kwargs)
        return self._call_function(node.target, args, kwargs)

    def _call_module(self, node: fx.Node, args: Any, kwargs: Any, tensors: Tensors, training: bool) -> Value:
        name = str(node.target)
        module = self._modules[name]
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if _is_norm(module) and isinstance(args[0], Images):
            norm = _norm(module, own, training)
            if node in self._left:
                return Pending(args[0], norm)
            residual, users = args[1].x_MNHWC if len(args) > 1 else None, getattr(module, "users", 1)
            made = stacked_batch_norm(args[0].x_MNHWC, residual, norm, args[0].moments, users)
            return tuple(map(Images, made)) if users == 2 else Images(made)
        if _has_rule(module) and isinstance(args[0], (Images, Pending)):
            return self._convolution(module, own, args[0], training and node in self._measured)
        if type(module) is nn.Linear and not self._exact and isinstance(args[0], Tensor) and args[0].dim() == 3:
            return _linear(own, args[0])
        if isinstance(module, nn.ReLU) and isinstance(args[0], Images):
            return Images(functional.relu(args[0].x_MNHWC))
        module.train(training)
        state = own if self._exact else dense_buffers(own)
        result = self._mapped(
            lambda state, *rest: torch.func.functional_call(module, state, rest, kwargs), (state, *args), {}
        )
        write_back(state, own)
        return _in_dtype_of(args[0], result)

    def _call_function(self, target: Any, args: Any, kwargs: Any) -> Value:
        """A function of the graph; sums, ReLU, means and the option-A shortcut stay in [M, N, H, W, C]."""
        first = args[0] if args else None
        if target is operator.getitem and isinstance(first, tuple):  # one of an activation's two handles
            return first[args[1]]
        if not kwargs and isinstance(first, Images):
            if target in (functional.relu, torch.relu) and len(args) == 1:
                return Images(functional.relu(first.x_MNHWC))
            if target in (operator.add, torch.add) and len(args) == 2 and isinstance(args[1], Images):
                return Images(first.x_MNHWC + args[1].x_MNHWC)
            if target is shortcut:
                _, stride, before, after = args
                return Images(functional.pad(first.x_MNHWC[:, :, ::stride, ::stride], (before, after)))
        if target is torch.mean and isinstance(first, Images) and kwargs == {"dim": (2, 3)} and len(args) == 1:
            # [M, N, C] from float32 sums, as torch's own mean makes them; H and W are at 2 and 3 here too.
            return first.x_MNHWC.mean(dim=(2, 3)) if not self._exact else self._apply(_mean, first.x_MNHWC)
        return self._mapped(target, args, kwargs)

    def _convolution(self, module: nn.Module, own: Tensors, x: Images | Pending, measured: bool) -> Images:
        assert isinstance(module, nn.Conv2d)
        weight_MOHWI = own["weight"].permute(0, 1, 3, 4, 2)
        place = (int(module.stride[0]), int(module.padding[0]))
        measured = measured and module.bias is None
        images, norm = (x.x, x.norm) if isinstance(x, Pending) else (x, None)
        y, moments = stacked_conv(images.x_MNHWC, weight_MOHWI, *place, norm, images.moments, measured)
        if module.bias is None:
            return Images(y, moments)
        if self._exact:  # the bias's gradient is a sum
            return Images(self._apply(lambda y, bias: y + bias.to(y.dtype), y, own["bias"]))
        return Images(y + own["bias"][:, None, None, None, :].to(y.dtype))

    def _mapped(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Value:
        """`function` of each member's arguments: the rule of everything that has none of its own."""
        flat, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Images))
        tensors = [leaf.x_MNCHW if isinstance(leaf, Images) else leaf for leaf in flat]
        if not any(isinstance(leaf, Tensor) for leaf in tensors):
            return function(*args, **kwargs)

        plain: list[Any] = []  # a shape, a dtype: the same for every member, and nothing that vmap could hand out

        def of_member(*leaves: Any) -> Any:
            own_args, own_kwargs = pytree.tree_unflatten(list(leaves), spec)
            result = function(*own_args, **own_kwargs)
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
                return result
            plain.append(result)
            return next(leaf for leaf in leaves if isinstance(leaf, Tensor))

        result = self._apply(of_member, *tensors)
        return plain[-1] if plain else pytree.tree_map(_as_images, result)


def _is_norm(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, FusedBatchNorm2d) and bool(module.track_running_stats)


def _is_convolution(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and _has_rule(modules[str(node.target)]) and len(node.args) == 1


def _has_rule(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d:
        return False
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    square = module.stride[0] == module.stride[1] and not isinstance(module.padding, str)
    return plain and square and module.padding[0] == module.padding[1]


def _norm(module: nn.Module, own: Tensors, training: bool) -> Norm:
    """The batch norm of all members, and the ReLU behind it. The batch is counted here."""
    assert isinstance(module, nn.BatchNorm2d)
    if training:
        own["num_batches_tracked"].add_(1)
    mean_MC = own["running_mean"]
    return Norm(
        own["weight"] if module.affine else torch.ones_like(mean_MC),
        own["bias"] if module.affine else torch.zeros_like(mean_MC),
        mean_MC,
        own["running_var"],
        training,
        # None: the cumulative average.
        1.0 / own["num_batches_tracked"].float() if module.momentum is None else module.momentum,
        module.eps,
        bool(getattr(module, "relu", False)),
    )


def _linear(own: Tensors, x_MNF: Tensor) -> Tensor:
    weight_MFK = own["weight"].transpose(1, 2)
    if "bias" not in own:
        return torch.bmm(x_MNF, weight_MFK)
    return torch.baddbmm(own["bias"][:, None, :], x_MNF, weight_MFK)


def _mean(x_NHWC: Tensor) -> Tensor:
    return x_NHWC.mean(dim=(1, 2))


def _in_dtype_of(x: Value, result: Value) -> Value:
    """`result` in x's dtype, as the module itself would have it: vmap's group norm answers bf16 in float32."""
    if not isinstance(x, (Images, Tensor)) or not isinstance(result, (Images, Tensor)):
        return result
    dtype = (x.x_MNHWC if isinstance(x, Images) else x).dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return result
    return Images(result.x_MNHWC.to(dtype)) if isinstance(result, Images) else result.to(dtype)


def _as_images(value: Any) -> Value:
    if isinstance(value, Tensor) and value.dim() == 5:
        return Images(value.permute(0, 1, 3, 4, 2).contiguous())
    return value


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The values that nothing needs after each node, so that activations are freed as they are in a plain call."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    freed: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        freed.setdefault(node, []).append(used)
    return freed
