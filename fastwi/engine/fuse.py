"""Rewrites a network for the CPU: batch norm, the residual sum and ReLU behind it become one module, and
subsampling with zero channels around it (the option-A shortcut) one function.

The network itself stays a plain nn.Module; this file can be taken out and everything still trains, slower.
"""

import copy
import operator
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.shortcut import shortcut

_RELU = (functional.relu, torch.relu)
_ADD = (operator.add, torch.add)
_PAD = (functional.pad, torch._C._nn.pad)


def trace(module: nn.Module) -> fx.GraphModule | None:
    """A traced copy of `module` under the same names; None where fx cannot trace it.

    None too where the trace depends on the mode: it has either what training does or what evaluation does, for ever.
    """
    try:
        in_evaluation = fx.symbolic_trace(copy.deepcopy(module).eval())
        traced = fx.symbolic_trace(copy.deepcopy(module).train())
    except Exception:  # fx raises whatever the traced code raises
        return None
    return traced if traced.code == in_evaluation.code else None


def fuse_batch_norm(module: nn.Module) -> fx.GraphModule | None:
    """A copy of `module` with fused batch norms, under the same parameter and buffer names; or None.

    None where the network cannot be traced (see `trace`) or has no batch norm that this applies to.
    Only nn.BatchNorm2d with affine parameters and running statistics is replaced.
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
        if type(original) is not nn.BatchNorm2d or not original.affine or not original.track_running_stats:
            continue
        if calls[id(original)] > 1:  # what follows one call need not follow the other
            continue
        residual = _fold_sum(traced, node)
        relu = _fold_relu(traced, node)
        if residual is not None:
            node.args = (node.args[0], residual)
        module_fused = FusedBatchNorm2d(original, relu)
        _split_users(traced, node, module_fused)
        parent, _, name = node.target.rpartition(".")
        setattr(traced.get_submodule(parent), name, module_fused)
        fused += 1
    # fx keeps what the trace reached, in the order of use; tensors are handed over by name, so order is free.
    names, names_before = ({name for name, _ in m.named_parameters()} for m in (traced, module))
    if fused == 0 or names != names_before:
        return None
    traced.graph.lint()
    traced.recompile()
    return traced


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
    # The fused module runs where the sum did, after both of its inputs.
    node_after, order = user, list(traced.graph.nodes)
    if order.index(other) > order.index(node):
        node_after.prepend(node)
    user.replace_all_uses_with(node)
    traced.graph.erase_node(user)
    return other


def _fold_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Where the only use of `node` is a ReLU, remove it and return True."""
    user = _only_user(node)
    if user is None:
        return False
    is_function = user.op == "call_function" and user.target in _RELU
    is_method = user.op == "call_method" and user.target == "relu"
    is_module = user.op == "call_module" and isinstance(traced.get_submodule(str(user.target)), nn.ReLU)
    if not (is_function or is_method or is_module) or node not in user.args[:1]:
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
    if not isinstance(padding, (tuple, list)) or len(padding) != 6 or any(padding[:4]) or min(padding[4:]) < 0:
        return
    place: Any = sampled.args[1]
    stride = place[3].step if isinstance(place, tuple) and len(place) == 4 and isinstance(place[3], slice) else None
    every = slice(None, None, stride)
    if not isinstance(stride, int) or place != (slice(None), slice(None), every, every):
        return
    with traced.graph.inserting_before(node):
        fused = traced.graph.call_function(shortcut, (sampled.args[0], stride, *padding[4:]))
    node.replace_all_uses_with(fused)
    traced.graph.erase_node(node)
    traced.graph.erase_node(sampled)
