"""What a traced network changes in place, and what else shows it: what shares its memory.

A network whose trace would hide such a change is left as it is (`fastwi.engine.fuse.trace`).
"""

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

PLAIN: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ipow: operator.pow, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.iand: operator.and_, operator.ior: operator.or_,
    operator.ixor: operator.xor, operator.ilshift: operator.lshift, operator.irshift: operator.rshift,
}  # fmt: skip
"""What operators such as `+=` are where nothing else reads the old values."""
_VIEWS = {
    "getitem", "getattr", "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim",
    "t", "squeeze", "unsqueeze", "expand", "chunk", "split", "unbind", "narrow", "select", "detach", "contiguous",
    "ravel", "swapaxes", "moveaxis", "diagonal", "swapdims", "adjoint", "as_strided", "einsum", "real", "imag",
    "conj", "positive", "resolve_conj", "resolve_neg", "view_as_real", "view_as_complex", "atleast_1d", "atleast_2d",
    "atleast_3d", "broadcast_to", "broadcast_tensors", "meshgrid", "tensor_split", "hsplit", "vsplit", "dsplit",
    "split_with_sizes", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "pos", "conj_physical", "linalg_diagonal", "unsafe_chunk", "unsafe_split",
    "unsafe_split_with_sizes", "cartesian_prod", "chain_matmul", "dequantize", "channel_shuffle", "pixel_shuffle",
    "pixel_unshuffle",
}  # fmt: skip
"""Functions, by name, whose result may be in the memory of their first tensor. Most methods' may be."""
_OF_EACH = {
    "broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d", "cartesian_prod", "chain_matmul",
}  # fmt: skip
"""Those of them whose result may be in the memory of any of their tensors."""
_FRESH_METHODS = {
    "size", "dim", "numel", "clone", "mean", "sum", "var", "std", "amax", "relu", "sigmoid", "tanh", "softmax", "exp",
    "abs", "add", "sub", "mul", "div", "pow", "matmul",
}  # fmt: skip
_FRESH_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "requires_grad"}
_FRESH = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
)  # fmt: skip
"""Layers whose result is in memory of its own, as is that of activations that are not in place."""
_KNOWN = {"torch", "fastwi", "operator", "_operator", "builtins", "math"}


def made_plain(traced: fx.GraphModule) -> bool:
    """Make y = y + z of `y += z`, and so on; False where that would be another network."""
    place = {node: i for i, node in enumerate(traced.graph.nodes)}
    memory = {node: _shared_memory(traced, node) for node in place}
    last_read = {node: max(map(place.__getitem__, node.users), default=-1) for node in place}
    for node in place:
        if node.target in PLAIN:
            changed = _shared_memory(traced, node.args[0])
            # Views that were made before are changed too.
            read_later = (each for each in place if place[each] < place[node] < last_read[each])
            if any(each.op == "get_attr" for each in changed) or any(memory[each] & changed for each in read_later):
                return False
            node.target = PLAIN[node.target]
    traced.recompile()
    return True


def changed_in_place(traced: fx.GraphModule) -> bool:
    """Whether an activation with several readers is changed in place by one of them."""
    return any(len(each.users) > 1 for _, each in _changes(traced))


def changes_a_view_of_a_buffer(traced: fx.GraphModule) -> bool:
    """Whether a buffer is changed in place by way of a view, or of what another change in place gave."""
    return any(each.op == "get_attr" and each is not changed for changed, each in _changes(traced))


def _changes(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What may be changed in place, each with itself and with what it may be in the memory of."""
    for node in traced.graph.nodes:
        for changed in _changed_by(traced, node):
            for each in _shared_memory(traced, changed):
                yield changed, each


def _changed_by(traced: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What the node may change in place."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return [out]
    if node.op == "call_function" and not is_known(node.target):
        return node.all_input_nodes
    return node.all_input_nodes[:1] if _is_in_place(traced, node) else []


def _shared_memory(traced: fx.GraphModule, node: Any) -> set[fx.Node]:
    """The node, and what it may be in the memory of; empty for what is no value of the network."""
    found, waiting = set[fx.Node](), [node] if isinstance(node, fx.Node) else []
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += _may_be_in_the_memory_of(traced, each)
    return found


def _may_be_in_the_memory_of(traced: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Those of a node's inputs, which begin with its first tensor."""
    inputs = node.all_input_nodes
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        is_activation = type(module).__module__ == "torch.nn.modules.activation"
        fresh = isinstance(module, _FRESH) or (is_activation and not _is_in_place(traced, node))
        return [] if fresh else inputs
    if node.op == "call_method":
        return [] if node.target in _FRESH_METHODS else inputs[:1]
    if node.op == "call_function" and not is_known(node.target):
        return inputs
    name = getattr(node.target, "__name__", "")
    if name not in _VIEWS or (node.target is getattr and node.args[1] in _FRESH_ATTRIBUTES):
        return []
    return inputs if name in _OF_EACH else inputs[:1]


def is_known(function: object) -> bool:
    """Whether a function or a module's type is torch's, fastwi's or Python's own, and no user's."""
    return (getattr(function, "__module__", None) or "torch").partition(".")[0] in _KNOWN


def _is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    second = node.args[1] if len(node.args) > 1 else None  # an index of 1 equals True
    if node.op == "call_function" and (node.kwargs.get("inplace") or second is True):
        return True
    if node.target in (operator.and_, operator.or_):
        return False
    return node.target is operator.setitem or (name.endswith("_") and not name.endswith("__"))
