"""Rewrites a network for the CPU, which then trains faster, and for `stacked`, which runs its graph.

Batch norm, the residual sum and ReLU behind it become one module, and the option-A shortcut one function.
"""

import copy
import functools
import operator
import sys
from collections import Counter
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional

from fastwi.engine.in_place import PLAIN, changed_in_place, is_known, made_plain
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.shortcut import shortcut
from fastwi.models import generators

_RELU = (functional.relu, torch.relu)
_ADD = (operator.add, torch.add)
_MODES = {
    each.__code__
    for each in (
        torch.no_grad.__enter__, torch.enable_grad.__enter__, torch.set_grad_enabled.__init__,
        torch.inference_mode.__enter__, torch.autocast.__enter__,
    )
}  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ASKED = (torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_autocast_enabled)
_PAD = (functional.pad, torch._C._nn.pad)


def trace(module: nn.Module) -> fx.GraphModule | None:
    """A traced copy of `module` under the same names; None where fx cannot trace it.

    None too where the trace is not what the network does: where it depends on the mode, draws or earlier calls, has
    computed values as constants, hooks, a `train` of its own, or an object with a `forward` of its own, sets a mode
    (also that of gradients or of autocast), asks for one of these, has a gradient of its own, or changes an
    activation that something else reads.
    """
    own_train = any(type(each).train is not nn.Module.train for each in module.modules())
    # fx calls the class's forward, and those who replace layers know them by their class.
    own_forward = any(
        "forward" in vars(each) or not is_known(vars(each).get("_conv_forward")) for each in module.modules()
    )
    if own_train or own_forward or any(getattr(each, hooks) for hooks in _HOOKS for each in module.modules()):
        return None
    evaluated, trained = copy.deepcopy(module).eval(), copy.deepcopy(module).train()
    before = generators.states()
    try:
        codes = [_traced(each).code for each in (evaluated, trained)]
        traced = _traced(trained)
        drew = generators.drawn_from(before)
    except Exception:  # fx raises whatever the traced code raises
        return None
    finally:
        generators.restore(before)
    sets_mode = any(each.training for each in evaluated.modules()) or not all(m.training for m in trained.modules())
    if drew or sets_mode or codes != [traced.code] * 2:
        return None
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    constants = any(node.op == "get_attr" and node.target not in names for node in traced.graph.nodes)
    return None if constants or not made_plain(traced) or changed_in_place(traced) else traced


class _Proxy(fx.Proxy):
    """Records `y += z`, which fx would read as y = y + z: another network where y is read by another name later."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "grad", "requires_grad"):  # fx would not see it
            raise TypeError(f"a network sets {name} of an activation")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)

    def _changed(self, function: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    for _function in PLAIN:
        locals()[f"__{_function.__name__}__"] = functools.partialmethod(_changed, _function)


class _Attribute(fx.proxy.Attribute, _Proxy):
    """`y.mT`, say: a view, which `+=` changes too."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else a buffer's value at the time is what the graph has

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What the traced code computes with."""
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """What `forward` is traced with: of images, a proxy. All else has its default, as no call gives it."""
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        for place, argument in enumerate(arguments[2:], 2):
            if argument.node.args:
                arguments[place] = argument.node.args[0]
            elif argument.node.target.startswith("**"):
                arguments[place] = {}
        return function, arguments


def _traced(module: nn.Module) -> fx.GraphModule:
    """Raises TypeError where the network calls what fx does not see."""
    tracer, before = _Tracer(), sys.getprofile()
    sys.setprofile(_refuse_unseen)
    try:
        graph = tracer.trace(module)
    finally:
        sys.setprofile(before if callable(before) else None)  # cProfile's is not, and ends here
    return fx.GraphModule(tracer.root, graph)


def _refuse_unseen(frame: FrameType, event: str, called: Any) -> None:
    """A profiler that raises TypeError for modes, gradients of its own, and questions about an activation's type."""
    unseen = event == "call" and frame.f_code in _MODES
    if event == "c_call":
        owner = getattr(called, "__self__", None)
        unseen = called.__name__ == "apply" and isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
        of_torch = frame.f_globals.get("__name__", "").startswith("torch.")
        if called in _ASKED:
            unseen = not of_torch
        elif called in (isinstance, hasattr) and not of_torch:
            unseen = any(isinstance(value, fx.Proxy) for value in frame.f_locals.values()) and not _in_mode(frame)
    if unseen:
        raise TypeError("torch.fx does not see this")


def _in_mode(frame: FrameType | None) -> bool:
    """Whether a mode of torch's is at work, which asks for itself and not for the network."""
    while frame is not None and frame.f_code.co_name != "__torch_function__":
        frame = frame.f_back
    return frame is not None


def fuse_batch_norm(module: nn.Module) -> fx.GraphModule | None:
    """A copy of `module` with fused batch norms, under the same parameter and buffer names.

    None where it cannot be traced (see `trace`) or has no nn.BatchNorm2d with parameters and running statistics.
    """
    traced = trace(module)
    if traced is None:
        return None
    for node in list(traced.graph.nodes):
        _fuse_shortcut(traced, node)
    fused = 0
    calls = Counter(id(traced.get_submodule(n.target)) for n in traced.graph.nodes if n.op == "call_module")
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        original = traced.get_submodule(node.target)
        # What follows one call of a module need not follow another.
        if calls[id(original)] > 1 or not _can_be_fused(original):
            continue
        residual = _fold_sum(traced, node)
        relu = _fold_relu(traced, node)
        if residual is not None:
            node.args = (node.args[0], residual)
        module_fused = FusedBatchNorm2d(original, relu)
        _split_users(traced, node, module_fused)
        traced.set_submodule(node.target, module_fused)
        fused += 1
    # fx keeps what the trace reached, in the order of use; tensors are passed by name, so the order is free.
    names, names_before = ({name for name, _ in m.named_parameters()} for m in (traced, module))
    reached = {path for path, _ in traced.named_modules()}
    lost = any(name.rpartition(".")[0] not in reached for name, _ in module.named_buffers())
    if fused == 0 or lost or names != names_before:
        return None
    traced.graph.lint()
    traced.recompile()
    return traced


def _can_be_fused(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    # Newer versions of torch have norms with a weight and no bias.
    return type(module) is nn.BatchNorm2d and module.bias is not None and module.track_running_stats


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fold_sum(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Where the only use of `node` is a sum with another activation, remove the sum and return the other."""
    user = _only_user(node)
    if user is None or user.op != "call_function" or user.target not in _ADD or user.kwargs:
        return None
    others = [argument for argument in user.args if argument is not node]
    if len(user.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    order = list(traced.graph.nodes)
    if order.index(other) > order.index(node):  # then the fused module runs where the sum did
        user.prepend(node)
    user.replace_all_uses_with(node)
    traced.graph.erase_node(user)
    return other


def _fold_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Where the only use of `node` is a ReLU, remove it and return True."""
    user = _only_user(node)
    if user is None or node not in user.args[:1]:
        return False
    is_function = user.op == "call_function" and user.target in _RELU
    is_method = user.op == "call_method" and user.target == "relu"
    is_module = user.op == "call_module" and isinstance(traced.get_submodule(str(user.target)), nn.ReLU)
    if not (is_function or is_method or is_module):
        return False
    user.replace_all_uses_with(node)
    traced.graph.erase_node(user)
    return True


def _split_users(traced: fx.GraphModule, node: fx.Node, fused: FusedBatchNorm2d) -> None:
    """Where the output has two users, give each its own handle, so that the kernel sums their gradients."""
    users = list(node.users)
    if len(users) != 2:
        return
    fused.users = 2
    for index, user in enumerate(users):
        with traced.graph.inserting_after(node):
            handle = traced.graph.call_function(operator.getitem, (node, index))
        user.replace_input_with(node, handle)


def _fuse_shortcut(traced: fx.GraphModule, node: fx.Node) -> None:
    """pad(x[:, :, ::s, ::s], channels) as one call, where the subsampled activation has no other user."""
    if node.op != "call_function" or node.target not in _PAD or len(node.args) != 2:
        return
    if node.kwargs.get("mode", "constant") != "constant" or node.kwargs.get("value") not in (None, 0, 0.0):
        return
    sampled, padding = node.args
    if not isinstance(sampled, fx.Node) or sampled.target is not operator.getitem or len(sampled.users) != 1:
        return
    if not isinstance(padding, (tuple, list)) or len(padding) != 6:
        return
    if not all(isinstance(each, int) for each in padding) or any(padding[:4]) or min(padding[4:]) < 0:
        return  # a computed padding is known when it runs
    place: Any = sampled.args[1]
    stride = getattr(place[-1], "step", None) if isinstance(place, tuple) and place else None
    every = slice(None, None, stride)
    if not isinstance(stride, int) or place != (slice(None), slice(None), every, every):
        return
    with traced.graph.inserting_before(node):
        fused = traced.graph.call_function(shortcut, (sampled.args[0], stride, *padding[4:]))
    node.replace_all_uses_with(fused)
    traced.graph.erase_node(node)
    traced.graph.erase_node(sampled)
