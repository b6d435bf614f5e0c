"""Runs M members of any network at once: its traced graph, each layer batched over the member axis.

Convolutions, batch norm with its residual sum and ReLU, linear layers, sums and means have rules of their own, on
activations [M, N, H, W, C]; a batch norm between convolutions goes to the second (see `fastwi.kernels.stacked`).
Every other operation is applied to each member (see `fastwi.engine.members`), on [M, N, C, H, W].

Shapes: M members, N images of a batch, C channels, H height, W width, K classes.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fastwi.engine.counters import called_once, counters_to_add
from fastwi.engine.fuse import fuse_batch_norm, trace
from fastwi.engine.in_place import changes_a_view_of_a_buffer, is_known
from fastwi.engine.members import Apply, Tensors, by_vmap, dense_buffers, one_by_one, write_back
from fastwi.errors import ConfigError
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.shortcut import shortcut
from fastwi.kernels.stacked import Norm, Place, stacked_batch_norm, stacked_conv, stacked_shortcut

Forward = Callable[..., Tensor]  # (tensors by name [M, ...], x_MNHWC, training, places) to logits_MNK
Places = Mapping[str, Place]  # where gradients of parameters are written, by name
NO_PLACES: Places = {}
_LOW = (torch.bfloat16, torch.float16)
_READS = {"item", "tolist", "numpy"}  # methods


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


class StackedNetwork(fx.Interpreter):
    """M networks of one architecture as one function of stacked tensors. Holds no weights.

    With `exact` a member's result is the same whatever M is: what has no such kernel is run member after member.
    """

    _conv: Callable[..., tuple[Tensor, Tensor | None]] = staticmethod(stacked_conv)
    _batch_norm: Callable[..., Any] = staticmethod(stacked_batch_norm)

    def __init__(self, traced: fx.GraphModule, exact: bool) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.traced, self._exact, self._places = traced, exact, NO_PLACES
        self._apply: Apply = one_by_one if exact else by_vmap
        calls = [node for node in traced.graph.nodes if node.op == "call_module"]
        convolutions = {n for n in calls if has_rule(self.submodules[n.target]) and len(n.args) == 1}
        norms = {n for n in calls if _is_norm(self.submodules[n.target])}
        self._once = called_once(traced)
        self.counted = counters_to_add(traced, _is_norm)
        """Counters of batch norms to which the caller adds the batch, before a call in training mode."""
        # Convolutions whose output only a batch norm reads, and batch norms whose output only a convolution does.
        self._measured = {n for n in convolutions if set(n.users) <= norms}
        self._left = {n for n in norms if len(n.args) == 1 and len(n.users) == 1 and set(n.users) <= convolutions}

    @classmethod
    def of(cls, model: nn.Module, exact: bool) -> "StackedNetwork | None":
        """The stacked form of `model`; None where it cannot be traced (see `trace`) or layers share parameters.

        None too where a view of a buffer is changed in place: the views here are copies. And where a number is made
        of tensors: here all members have one.
        """
        traced = fuse_batch_norm(model) or trace(model)
        if traced is None or changes_a_view_of_a_buffer(traced) or any(map(_makes_numbers, traced.graph.nodes)):
            return None
        shared = len(list(traced.named_parameters(remove_duplicate=False))) > len(list(traced.parameters()))
        return None if shared else cls(traced, exact)

    def __call__(self, tensors: Tensors, x_MNHWC: Tensor, training: bool, places: Places = NO_PLACES) -> Tensor:
        """Logits [M, N, K] in float32. Running statistics in `tensors` are updated in place where `training`.

        The backward pass writes gradients of layers with a rule to `places`, where they have one.
        """
        self._tensors, self._training, self._places = tensors, training, places
        self._members = len(x_MNHWC)
        try:
            logits_MNK: Tensor = self.run(Images(x_MNHWC), enable_io_processing=False)
        finally:  # keep no weight and no activation, also after an exception
            self.env.clear()
            self.args_iter = iter(())
            self._tensors, self._places = {}, NO_PLACES
        return logits_MNK.float()

    def run_node(self, node: fx.Node) -> Value:
        """The value of a node of the graph."""
        self._node = node
        return super().run_node(node)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Value:
        """All members' parameters or buffers of one name; what no state dict holds is the same for every member."""
        if target in self._tensors:
            return self._tensors[target]
        value = self.fetch_attr(target)
        return value.expand(self._members, *value.shape) if isinstance(value, Tensor) else value

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Value:
        """A method of a tensor."""
        return self._mapped(lambda x, *rest, **more: getattr(x, target)(*rest, **more), args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Value:
        """A layer: by its own rule, or applied to each member."""
        module, x, prefix = self.submodules[target], args[0] if args else None, f"{target}."
        own = {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}
        low = next((value.dtype for value in own.values() if value.dtype in _LOW), None)
        if low is not None:  # what a float32 buffer was added to is in float32; autocast casts it here, too
            args = tuple(_in_dtype(value, low) for value in args)
            x = args[0] if args else None
        if _is_norm(module) and isinstance(x, Images):
            norm = _norm(module, own, self._training, f"{prefix}num_batches_tracked" in self.counted)
            weight, bias = self._place(f"{prefix}weight"), self._place(f"{prefix}bias")
            if weight is not None and bias is not None:
                norm = dataclasses.replace(norm, gradients=(weight, bias))
            if self._node in self._left:
                return Pending(x, norm)
            residual, users = args[1] if len(args) > 1 else None, getattr(module, "users", 1)
            if residual is not None and not _alike(x, residual):
                return self._plain_sum(x, residual, norm, users)
            residual_MNHWC = None if residual is None else residual.x_MNHWC
            made = self._batch_norm(x.x_MNHWC, residual_MNHWC, norm, x.moments, users)
            return tuple(map(Images, made)) if users == 2 else Images(made)
        if has_rule(module) and isinstance(x, (Images, Pending)):
            return self._convolution(module, own, x, self._place(f"{prefix}weight"))
        if type(module) is nn.Linear and not self._exact and isinstance(x, Tensor) and x.dim() == 3:
            return _linear(own, x)
        if isinstance(module, nn.ReLU) and isinstance(x, Images):
            return Images(functional.relu(x.x_MNHWC))
        module.train(self._training)
        state = own if self._exact else dense_buffers(own)
        # vmap's batch norms take no mixture of dtypes, and their parameters are in float32.
        widened = not self._exact and isinstance(module, nn.modules.batchnorm._NormBase)

        def of_member(state: dict[str, Tensor], *rest: Any, **more: Any) -> Any:
            return torch.func.functional_call(
                module, state, tuple(x.float() for x in rest) if widened else rest, more
            )

        result = self._mapped(of_member, (state, *args), kwargs)
        write_back(state, own)
        return _in_dtype_of(x, result)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Value:
        """A function; sums, ReLU, means and the option-A shortcut stay in [M, N, H, W, C]."""
        first = args[0] if args else None
        if target is operator.getitem and isinstance(first, tuple):  # one of an activation's two handles
            return first[args[1]]
        if isinstance(first, Images):
            x = first.x_MNHWC
            if target in (functional.relu, torch.relu, torch.relu_):  # in place it has one reader (see `trace`)
                return Images(functional.relu(x))
            # torch.add(x, 2, y) is x + 2 y, and has no rule.
            if target in (operator.add, torch.add) and len(args) == 2 and isinstance(args[1], Images) and not kwargs:
                return Images(x + args[1].x_MNHWC)
            if target is shortcut:
                _, stride, before, after = args
                return Images(stacked_shortcut(x, stride, before, after))
            if target is torch.mean and kwargs == {"dim": (2, 3)} and len(args) == 1:
                # [M, N, C] from float32 sums, as torch's own mean makes them; H and W are at 2 and 3 here too.
                return self._apply(lambda x_NHWC: x_NHWC.mean((1, 2)), x) if self._exact else x.mean((2, 3))
        return self._mapped(target, args, kwargs)

    def _plain_sum(self, x: Images, other: Value, norm: Norm, users: int) -> Value:
        """The batch norm, its sum with what has another shape (a parameter, a mean, a number), and the ReLU."""
        made = Images(self._batch_norm(x.x_MNHWC, None, dataclasses.replace(norm, relu=False), x.moments, 1))
        result = self._mapped(operator.add, (made, other), {})
        if norm.relu:
            result = self._mapped(functional.relu, (result,), {})
        return (result, result) if users == 2 else result

    def _place(self, name: str) -> Place | None:
        """Where the gradient of a parameter goes, if it has a place and one gradient only."""
        return self._places.get(name) if name.rpartition(".")[0] in self._once else None

    def _convolution(self, module: nn.Module, own: Tensors, x: Images | Pending, place: Place | None) -> Images:
        assert isinstance(module, nn.Conv2d)
        if place is not None:
            place = dataclasses.replace(place, rows=place.rows.permute(0, 1, 3, 4, 2))
        weight_MOHWI = own["weight"].permute(0, 1, 3, 4, 2)
        stride, padding = int(module.stride[0]), int(module.padding[0])
        images, norm = (x.x, x.norm) if isinstance(x, Pending) else (x, None)
        measured = self._training and self._node in self._measured and module.bias is None
        y, moments = self._conv(images.x_MNHWC, weight_MOHWI, stride, padding, norm, images.moments, measured, place)
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
        if any(each != plain[0] for each in plain):  # math.sqrt of a tensor, say
            raise ConfigError(
                f"engine.name: stacked and halo have one number for all networks, and {self._node.name} is another "
                "for each; use loop"
            )
        return plain[0] if plain else pytree.tree_map(_as_images, result)


def mapped_network(model: nn.Module, exact: bool, compiler: Callable[[Any], Any] | None = None) -> Forward:
    """The whole network applied to each member, for what torch.fx cannot trace, with batch norm's buffers.

    `exact`: see `StackedNetwork`. A `compiler` is handed one member's network then, and all members' at once else.
    """

    def of_member(state: dict[str, Tensor], x_NCHW: Tensor) -> Any:
        return torch.func.functional_call(model, state, (x_NCHW,))

    one = compiler(of_member) if compiler and exact else of_member

    def forward(tensors: Tensors, x_MNHWC: Tensor, training: bool) -> Tensor:
        model.train(training)
        state = tensors if exact else dense_buffers(tensors)
        logits_MNK: Tensor = (one_by_one if exact else by_vmap)(one, state, x_MNHWC.permute(0, 1, 4, 2, 3))
        write_back(state, tensors)
        return logits_MNK.float()

    return compiler(forward) if compiler and not exact else forward


def norms_in_float32(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `model` whose norms compute in float32 and answer in `dtype`: vmap's take no mixture of dtypes."""
    network = copy.deepcopy(model)
    if dtype == torch.float32:
        return network
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda _module, inputs: tuple(x.float() for x in inputs))
            module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    return network


def _makes_numbers(node: fx.Node) -> bool:
    """Whether a node reads values of a tensor. A function of the user's may, or may make a tensor of numbers."""
    if node.op == "call_method":
        return node.target in _READS
    return node.op == "call_function" and not is_known(node.target)


def _is_norm(module: nn.Module) -> bool:
    if type(module) not in (nn.BatchNorm2d, FusedBatchNorm2d) or not module.track_running_stats:
        return False
    return (module.weight is None) == (module.bias is None)


def has_rule(module: nn.Module) -> bool:
    """Whether `module` is a convolution that is computed for all members at once."""
    if type(module) is not nn.Conv2d:
        return False
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    square = module.stride[0] == module.stride[1] and not isinstance(module.padding, str)
    return plain and square and module.padding[0] == module.padding[1]


def _norm(module: nn.Module, own: Tensors, training: bool, counted: bool) -> Norm:
    """The batch norm of all members, and the ReLU behind it. The batch is counted here, or was by the caller."""
    assert isinstance(module, nn.BatchNorm2d)
    if training and not counted:
        own["num_batches_tracked"].add_(1)
    mean_MC, factor = own["running_mean"], module.momentum
    return Norm(
        own["weight"] if module.affine else torch.ones_like(mean_MC),
        own["bias"] if module.affine else torch.zeros_like(mean_MC),
        mean_MC,
        own["running_var"],
        training,
        1.0 / own["num_batches_tracked"].float() if factor is None else factor,  # None: the cumulative average
        module.eps,
        bool(getattr(module, "relu", False)),
    )


def _alike(x: Images, other: Value) -> bool:
    return isinstance(other, Images) and other.x_MNHWC.shape == x.x_MNHWC.shape


def _linear(own: Tensors, x_MNF: Tensor) -> Tensor:
    """The linear layers of all members: one matrix product with the bias, rounded once."""
    weight_MFK = own["weight"].transpose(1, 2)
    if "bias" not in own:
        return torch.bmm(x_MNF, weight_MFK)
    return torch.baddbmm(own["bias"][:, None, :], x_MNF, weight_MFK)


def _in_dtype_of(x: Value, result: Value) -> Value:
    """`result` in x's dtype, as the module itself would have it: vmap's group norm answers bf16 in float32."""
    dtype = x.x_MNHWC.dtype if isinstance(x, Images) else getattr(x, "dtype", None)
    return _in_dtype(result, dtype) if dtype in _LOW else result


def _in_dtype(value: Value, dtype: torch.dtype) -> Value:
    if isinstance(value, Images):
        return dataclasses.replace(value, x_MNHWC=value.x_MNHWC.to(dtype))
    if isinstance(value, Pending):
        return dataclasses.replace(value, x=_in_dtype(value.x, dtype))
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _as_images(value: Any) -> Value:
    if isinstance(value, Tensor) and value.dim() == 5:
        return Images(value.permute(0, 1, 3, 4, 2).contiguous())
    return value
