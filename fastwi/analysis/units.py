"""Which units of a network's tensors are tied to each other, read off its graph.

A unit is one place of one axis of a tensor: an output channel of a convolution, an input of a linear layer. Layers
and sums tie units of two axes place by place. Layers with weights have a rule each. Operations that copy (views,
slices, padding, concatenation) are run on the units' numbers. Every other operation is run on random numbers, before
and after a permutation of its inputs: its outputs have to move likewise, or stay as they are. What does neither is
refused.

Shapes: U units of an axis.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fastwi.errors import UserError

Units = NDArray[np.int64]
Run = Callable[[Sequence[Tensor]], Any]

_ARGUMENTS = {
    "convolution": ("input", "weight", "bias"),
    "linear": ("input", "weight", "bias"),
    "batch norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "instance norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "group norm": ("input", "num_groups", "weight", "bias"),
    "layer norm": ("input", "normalized_shape", "weight", "bias"),
    "prelu": ("input", "weight"),
}
"""The layers that have a rule, and the names of their function's arguments."""
_LAYERS: dict[Any, str] = {
    functional.conv2d: "convolution", nn.Conv2d: "convolution", functional.linear: "linear", nn.Linear: "linear",
    functional.batch_norm: "batch norm", nn.BatchNorm1d: "batch norm", nn.BatchNorm2d: "batch norm",
    functional.instance_norm: "instance norm", nn.InstanceNorm2d: "instance norm",
    functional.group_norm: "group norm", nn.GroupNorm: "group norm",
    functional.layer_norm: "layer norm", nn.LayerNorm: "layer norm", functional.prelu: "prelu", nn.PReLU: "prelu",
}  # fmt: skip
_COPIES: set[Any] = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.cat, torch.concat, torch.stack, torch.chunk,
    torch.split, torch.squeeze, torch.unsqueeze, functional.pad, torch._C._nn.pad, operator.getitem,
    "view", "reshape", "flatten", "permute", "transpose", "t", "chunk", "split", "squeeze", "unsqueeze", "expand",
    nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ChannelShuffle,
    nn.PixelShuffle, nn.PixelUnshuffle,
}  # fmt: skip
_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
_SAME = {"to", "float", "contiguous", "clone"}
_FIRST_NUMBER = 2.0**40  # of units in a copied tensor: what is padded with is smaller


class Layer(NamedTuple):
    """A call of a layer with weights: its node, its kind, and its parameters' names ("" for none)."""

    node: str
    kind: str
    weight: str
    bias: str


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor, and the units of each of its axes; None for an axis that nothing permutes."""

    tensor: Tensor
    axes: tuple[Units | None, ...]


class TiedUnits(fx.Interpreter):
    """Runs a traced network, in evaluation mode, on images and ties units.

    names: of the tensors that are permuted. Afterwards: `origin_U`, the number of the axis that each unit was made
    for; `element`, one unit that stands for all that are tied to it; `fixed`, units that stay in place; `axes`, the
    units of each axis of the named tensors; `blocks`, the groups of each group norm as lists of units, by node;
    `layers`, in the order of their calls; `reads`, node, axis and units of what convolutions and linear layers read.
    """

    def __init__(self, traced: fx.GraphModule, names: Iterable[str]) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        here: dict[str, Tensor] = dict(traced.named_parameters(remove_duplicate=False))
        here |= dict(traced.named_buffers(remove_duplicate=False))
        self._names = {id(here[name]): name for name in names if name in here}
        self._values: dict[str, Value] = {}
        self._above: list[int] = []  # of each unit, one that it is tied to; itself where it stands for all of them
        self._draw = np.random.default_rng(0)
        self._node: fx.Node
        self.origin_U: list[int] = []
        self.fixed = set[int]()
        self.blocks: dict[str, list[list[int]]] = {}
        self.layers: list[Layer] = []
        self.reads: dict[tuple[str, int], tuple[str, int, Units]] = {}

    @property
    def axes(self) -> dict[str, tuple[Units | None, ...]]:
        """The units of each axis of the named tensors that the network used."""
        return {name: value.axes for name, value in self._values.items()}

    def element(self, unit: int) -> int:
        """The unit that stands for all that `unit` is tied to."""
        while self._above[unit] != unit:
            self._above[unit] = self._above[self._above[unit]]
            unit = self._above[unit]
        return unit

    def run_node(self, node: fx.Node) -> Any:
        """The value of a node: a `Value` for a tensor."""
        self._node = node
        return super().run_node(node)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The images, which stay as they are."""
        found = super().placeholder(target, args, kwargs)
        return Value(found, (None,) * found.ndim) if isinstance(found, Tensor) else found

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The logits, which stay in place."""
        for value in pytree.tree_leaves(args):
            self._fix(*value.axes)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter or a buffer of the network."""
        return self._value_of(super().get_attr(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A function of tensors."""
        if target in _LAYERS:
            given = dict(zip(_ARGUMENTS[_LAYERS[target]], args, strict=False)) | kwargs
            return self._layer(_LAYERS[target], given, lambda: target(*_tensors(args), **_tensors(kwargs)))
        return self._other(target, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A method of a tensor."""
        return self._other(target, lambda x, *more, **named: getattr(x, target)(*more, **named), args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A layer."""
        module = self.submodules[target]
        if type(module) in _LAYERS:
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            given = {"input": args[0] if args else kwargs["input"], "num_groups": getattr(module, "num_groups", 1)}
            given |= {name: self._value_of(tensor) for name, tensor in own.items()}
            return self._layer(_LAYERS[type(module)], given, lambda: module(*_tensors(args), **_tensors(kwargs)))
        if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            self._refuse(f"a {type(module).__name__} has weights, and no rule")
        return self._other(type(module), module, args, kwargs)

    def _refuse(self, why: str) -> None:
        raise UserError(f"the node {self._node.name!r} of the network: {why}; its units cannot be permuted")

    def _units(self, count: int) -> Units:
        """So many fresh units, of an axis of their own."""
        first, origin = len(self._above), self.origin_U[-1] + 1 if self.origin_U else 0
        self._above += range(first, first + count)
        self.origin_U += [origin] * count
        return np.arange(first, first + count)

    def _fix(self, *axes: Units | None) -> None:
        self.fixed.update(unit for units in axes if units is not None for unit in units.tolist())

    def _tie(self, one: Units | None, other: Units | None) -> None:
        """Tie units place by place; those that meet an axis which nothing permutes stay in place."""
        if one is None or other is None or len(one) != len(other):
            self._fix(one, other)
            return
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            first, second = sorted((self.element(a), self.element(b)))
            self._above[second] = first

    def _value_of(self, found: Any) -> Any:
        """A tensor as a value; of a named one every axis has units."""
        if not isinstance(found, Tensor):
            return found
        name = self._names.get(id(found), "")
        if not name:
            return Value(found, (None,) * found.ndim)
        if name not in self._values:
            self._values[name] = Value(found, tuple(self._units(size) for size in found.shape))
        return self._values[name]

    def _layer(self, kind: str, given: dict[str, Any], call: Callable[[], Tensor]) -> Value:
        """A layer that has a rule, with its arguments by name."""
        x, tensor = given["input"], call()
        own = {name: given[name] for name in _PARAMETERS if given.get(name) is not None}
        if own:
            names = (self._names.get(id(own[name].tensor), "") if name in own else "" for name in ("weight", "bias"))
            self.layers.append(Layer(self._node.name, kind, *names))
        if kind in ("convolution", "linear"):
            weight, axis = own["weight"], 1 if kind == "convolution" else x.tensor.ndim - 1
            channels, inputs, units = x.tensor.shape[axis], weight.tensor.shape[1], x.axes[axis]
            source = self._node.all_input_nodes[0].name
            if units is not None:
                self.reads[source, axis] = (source, axis, units)
            self._fix(*weight.axes[2:])
            if inputs == channels:
                self._tie(weight.axes[1], units)
            elif inputs == 1 and units is not None:  # depthwise: the outputs of a channel move with it
                self._fix(weight.axes[1])
                self._tie(weight.axes[0], units.repeat(weight.tensor.shape[0] // channels))
            elif inputs == 1:
                self._fix(*weight.axes)
            else:
                self._refuse("a convolution of several groups of channels")
            if "bias" in own:
                self._tie(weight.axes[0], own["bias"].axes[0])
            if kind == "convolution":
                self._fix(*x.axes[2:])
                return Value(tensor, (x.axes[0], weight.axes[0], *(None,) * (tensor.ndim - 2)))
            return Value(tensor, (*x.axes[:-1], weight.axes[0]))
        if kind == "group norm" and x.axes[1] is not None:
            self.blocks[self._node.name] = x.axes[1].reshape(given["num_groups"], -1).tolist()
        for value in own.values():
            first = x.tensor.ndim - value.tensor.ndim if kind == "layer norm" else 1
            for axis, units in enumerate(value.axes):
                if len(units) > 1:
                    self._tie(units, x.axes[first + axis])
                else:  # one number for all
                    self._fix(units)
        return Value(tensor, x.axes)

    def _other(self, kind: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An operation without weights of its own."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        values = [leaf for leaf in leaves if isinstance(leaf, Value)]
        if not values:
            return function(*args, **kwargs)

        def run(tensors: Sequence[Tensor]) -> Any:
            left = iter([tensor.clone() for tensor in tensors])  # it may change them in place
            filled = [next(left) if isinstance(leaf, Value) else leaf for leaf in leaves]
            its_args, its_kwargs = pytree.tree_unflatten(filled, spec)
            return function(*its_args, **its_kwargs)

        found = run([value.tensor for value in values])
        tensors, spec_found = pytree.tree_flatten(found)
        if not any(isinstance(each, Tensor) for each in tensors):
            return found
        if all(units is None for value in values for units in value.axes):
            return pytree.tree_map_only(Tensor, lambda t: Value(t, (None,) * t.ndim), found)
        if kind in _SAME and len(values) == 1 and isinstance(found, Tensor) and found.equal(values[0].tensor):
            return values[0]
        if kind in _COPIES:
            axes = self._of_copies(run, values)
        elif len(tensors) == 1 and isinstance(found, Tensor):
            axes = [self._of_permuted(run, values)]
        else:
            self._refuse("it gives several tensors")
        return pytree.tree_unflatten(list(map(Value, tensors, axes)), spec_found)

    def _of_copies(self, run: Run, values: Sequence[Value]) -> list[tuple[Units | None, ...]]:
        """The axes of each output of an operation that copies: it is run on the numbers of units."""
        permuted = [[axis for axis, units in enumerate(value.axes) if units is not None] for value in values]
        found: list[list[Units | None]] = []
        for turn in range(max(map(len, permuted))):  # of a tensor with several such axes one after the other
            numbers = []
            for value, axes in zip(values, permuted, strict=True):
                number = torch.full_like(value.tensor, torch.nan, dtype=torch.float64)
                if turn < len(axes):
                    own = torch.tensor(value.axes[axes[turn]], device="cpu").to(number) + _FIRST_NUMBER
                    number[:] = own.view(-1, *(1,) * (number.ndim - axes[turn] - 1))
                numbers.append(number)
            outputs = [each.cpu().numpy() for each in pytree.tree_leaves(run(numbers))]
            found = found or [[None] * each.ndim for each in outputs]
            for axes_found, output in zip(found, outputs, strict=True):
                axis, units = self._copied(output)
                if axis >= 0:
                    axes_found[axis] = units
        return [tuple(axes) for axes in found]

    def _copied(self, output: NDArray[np.float64]) -> tuple[int, Units | None]:
        """The axis of an output along which the numbers of units change, and fresh units tied to these; -1: none."""
        known = output >= _FIRST_NUMBER
        if not known.any():
            return -1, None
        for axis, size in enumerate(output.shape):
            rows = np.moveaxis(output, axis, 0).reshape(size, -1)
            there = np.moveaxis(known, axis, 0).reshape(size, -1)
            low = np.where(there, rows, np.inf).min(1)
            high = np.where(there, rows, -np.inf).max(1)
            if not (low >= high)[there.any(1)].all():
                continue
            units = self._units(size)
            copied = np.isfinite(low)
            self._tie(units[copied], (low[copied] - _FIRST_NUMBER).astype(np.int64))
            self._fix(units[np.isnan(rows).any(axis=1)])
            if np.ptp(low[there.any(1)]) > 0:
                return axis, units
            self._fix(units)  # one unit alone: it stays in place
            return -1, None
        self._refuse("it moves units to several places of several axes")
        return -1, None

    def _of_permuted(self, run: Run, values: Sequence[Value]) -> tuple[Units | None, ...]:
        """The axes of the output of an operation which is to move, or not to change, where its inputs are permuted.

        The inputs' axes are aligned as in broadcasting, and tied.
        """
        drawn = [_random_like(value.tensor, self._draw) for value in values]
        base = run(drawn)
        found: list[Units | None] = [None] * base.ndim
        done = set[tuple[int, int]]()
        for i, value in enumerate(values):
            for axis, units in enumerate(value.axes):
                if units is None or (i, axis) in done:
                    continue
                size, back = len(units), axis - value.tensor.ndim
                together = [
                    (j, other.tensor.ndim + back)
                    for j, other in enumerate(values)
                    if other.tensor.ndim >= -back and other.tensor.shape[back] == size
                ]
                done.update(together)
                for j, there in together:
                    self._tie(units, values[j].axes[there])
                if size == 1:
                    self._fix(units)
                    continue
                order = torch.from_numpy(_moves(size, self._draw)).to(base.device)
                moved = list(drawn)
                for j, there in together:
                    moved[j] = drawn[j].index_select(there, order)
                after = run(moved)
                same = [q for q in range(base.ndim) if base.shape[q] == size]
                same = [q for q in same if _same(after, base.index_select(q, order))]
                if same:
                    found[same[0]] = units
                elif not _same(after, base):
                    self._refuse("permuted inputs do not give permuted outputs, or the same ones")
        return tuple(found)


def _tensors(found: Any) -> Any:
    """Values as their tensors."""
    return pytree.tree_map_only(Value, lambda value: value.tensor, found)


def _random_like(tensor: Tensor, draw: np.random.Generator) -> Tensor:
    """Numbers from 0.1 to 2 in the tensor's shape, of which no root or logarithm is undefined; not of integers."""
    if not tensor.is_floating_point():
        return tensor
    return torch.from_numpy(draw.uniform(0.1, 2.0, tuple(tensor.shape))).to(tensor)


def _moves(size: int, draw: np.random.Generator) -> Units:
    """A permutation that moves something."""
    order = draw.permutation(size)
    return order if (order != np.arange(size)).any() else order[::-1].copy()


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
