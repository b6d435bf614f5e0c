"""Passes by `Backward` on a CPU as flat lists of calls, without modules and autograd: a CPU's CUDA graphs.

A pass is recorded once for each shape of a batch: torch's operations by a dispatch mode, the C++ library's calls by
`fastwi.kernels.cpu.listening`. The list becomes a Python function of the tensors that the pass reads and writes. What
the pass allocates has a place in memory that stays. The function is used if it computes what the pass computes on the
next batch, to the bit. Where it does not, or where a pass holds more than such calls (draws, reads on the
host), the pass itself goes on.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastwi.engine.in_place import is_known
from fastwi.kernels.cpu import library, listening
from fastwi.models import generators

RECORD_AT = 16
"""The pass of a shape that is recorded. That costs as much as three passes, and saves a tenth of each later one."""
MOST_VALUES = 2**21
"""Of a batch of images. Longer passes gain little, and a recording keeps all activations."""

Replay = Callable[[Sequence[Tensor]], Tensor]
_aten = torch.ops.aten
_EMPTY = {
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip
_SAME = {_aten.detach.default, _aten.alias.default}
_REFUSED = {
    torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}  # fmt: skip
_CONSTANTS = (float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_READS = {"tolist", "numpy", "data_ptr", "storage", "untyped_storage"}  # of values, which no dispatch mode sees


def can_be_recorded(model: nn.Module, network: nn.Module) -> bool:
    """Whether `network`, the trace of `model`, has nothing but torch's and fastwi's functions and modules.

    A function of the user's may do in each pass what no dispatch mode sees. Nor may there be buffers that are no
    member's: to record a pass is to run it again.
    """
    if not isinstance(network, fx.GraphModule) or not model.state_dict().keys() >= dict(model.named_buffers()).keys():
        return False
    return all(_is_known(network, node) for node in network.graph.nodes)


def _is_known(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target not in _READS
    if node.op == "call_module":  # parametrisations are modules within
        used: list[Any] = [type(module) for module in network.get_submodule(str(node.target)).modules()]
    else:
        used = [node.target] if node.op == "call_function" else []
    return all(map(is_known, used))


class Recorded:
    """The passes of one network: each is run, or replayed where one of its shape was recorded."""

    def __init__(self) -> None:
        self._passes = Counter[Hashable]()
        self._replays: dict[Hashable, Replay | None] = {}

    def __call__(self, run: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """What `run` returns and writes, to the bit. `tensors` are all that it reads and writes.

        The first two are images and labels, whose shapes decide; the others are alike in all calls.
        """
        batch = tensors[:2]
        key = (torch.get_num_threads(), *((each.shape, each.stride(), each.dtype) for each in batch))
        replay = self._replays.get(key)
        self._passes[key] += 1
        since = self._passes[key] - RECORD_AT
        if since > 1 and replay is not None:
            with torch.no_grad():
                return replay(tensors)
        if since == 0 and batch[0].numel() <= MOST_VALUES:
            recorder = _Recorder(tensors)
            loss, same = _twice(run, lambda: recorder.record(run), tensors)
            self._replays[key] = recorder.replay() if same else None
        elif since == 1 and replay is not None:
            loss, same = _twice(run, lambda: replay(tensors), tensors)
            self._replays[key] = replay if same else None
        else:
            loss = run()
        return loss


def _twice(
    first: Callable[[], Tensor], second: Callable[[], Tensor], tensors: Sequence[Tensor]
) -> tuple[Tensor, bool]:
    """What `first` returns, and whether `second` returns and writes the same from the same state, to the bit.

    If `first` draws, `second` is not called: later draws would be others.
    """
    before, generator_states = [each.detach().clone() for each in tensors], generators.states()
    loss = first()
    if generators.drawn_from(generator_states):
        return loss, False
    after = [each.detach().clone() for each in tensors]
    _restore(tensors, before)
    try:
        with torch.no_grad():
            other = second()
            same = all(map(torch.equal, (loss, *after), (other, *tensors)))
    except Exception:  # out of memory, for one: the pass itself goes on
        same = False
    _restore(tensors, after)
    return loss, same


@torch.no_grad()
def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for each, value in zip(tensors, values, strict=True):
        each.copy_(value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):
    """Writes a pass as the source of a Python function of the tensors that it reads and writes."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._kept = list(tensors)  # all tensors of the pass, so that no two have the same id
        self._inputs = [f"v{at}" for at in range(len(tensors))]
        self._names = dict(zip(map(id, tensors), self._inputs, strict=True))
        self._namespace: dict[str, Any] = {"empty": torch.empty_strided}
        self._lines: list[str] = []
        self._last: dict[str, int] = {}  # the line of the last use, by name
        self._allocated: list[tuple[int, str, Tensor, tuple[int, ...]]] = []  # with lines and strides
        self._result = ""
        self.refusal = ""
        """Why the pass cannot be replayed, if it cannot."""

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run` returns."""
        with torch.enable_grad(), listening(self._write_call), self:
            loss = run()
        self._result = self._text(loss)
        return loss

    def replay(self) -> Replay | None:
        """The recorded pass, of other such tensors and to be called without gradients. None where it was refused."""
        if self.refusal:
            return None
        stays = self._in_memory_that_stays()
        done = {line for line, name, *_ in self._allocated if name in stays}
        ends: dict[int, list[str]] = {}
        for name in self._last.keys() - {*self._inputs, *stays}:
            ends.setdefault(self._last[name], []).append(name)
        source = [f"def replay(tensors):\n {', '.join(self._inputs)} = tensors"]
        for at, line in enumerate(self._lines):
            source += [f" {line}"] * (at not in done) + [f" {name} = None" for name in ends.get(at, [])]
        scope = self._namespace | stays
        exec("\n".join([*source, f" return {self._result}"]), scope)
        made: Replay = scope["replay"]
        return made

    def _in_memory_that_stays(self) -> dict[str, Tensor]:
        """A tensor that stays for each that the pass allocates, by name. Some share the memory of an earlier one.

        As much memory as the allocator would keep (`fastwi.engine.allocator`). The result is not among them, nor what
        changes its strides in place.
        """
        last: dict[int, int] = {}  # line of the last use, by memory, which views share
        for tensor in self._kept:
            at = _memory(tensor)
            last[at] = max(last.get(at, 0), self._last.get(self._names[id(tensor)], 0))
        rooms: list[tuple[int, Tensor]] = []  # line of the last use, and the memory
        stays = {}
        for line, name, tensor, strides in self._allocated:
            end, size = last[_memory(tensor)], tensor.untyped_storage().nbytes()
            if end == len(self._lines) or tensor.stride() != strides:
                continue
            free = [room for room in rooms if room[0] < line and len(room[1]) == size]
            latest = max(free, key=lambda room: room[0], default=(0, torch.empty(size, dtype=torch.uint8)))
            rooms = [room for room in rooms if room is not latest] + [(end, latest[1])]
            stays[name] = latest[1].view(tensor.dtype).as_strided(tensor.shape, strides)
        return stays

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its compiler for it, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SAME:
            self._name(result, self._text(args[0]))
        elif func in _EMPTY:
            sizes = f"{tuple(result.shape)}, {result.stride()}, dtype={self._text(result.dtype)}"
            self._allocated.append((len(self._lines), name := self._name(result), result, result.stride()))
            self._lines.append(f"{name} = empty({sizes})")
        else:
            pools = func is _aten.as_strided_.default  # nn.AdaptiveAvgPool2d(1)
            if func.namespace != "aten" or not (pools or _REFUSED.isdisjoint(func.tags)):
                self.refusal = f"{func} may do something else in each pass"
            keywords = [f"{name}={self._text(value)}" for name, value in (kwargs or {}).items()]
            call = f"{self._constant(func)}({', '.join([*map(self._text, args), *keywords])})"
            self._lines.append(f"{self._target(result)} = {call}")
        return result

    def _write_call(self, name: str, arguments: tuple[Any, ...]) -> None:
        """A call of the library."""
        passed = [f"{self._text(x)}.data_ptr()" if isinstance(x, Tensor) else self._text(x) for x in arguments]
        function = self._constant(getattr(library(), name))
        self._lines.append(f"{function}({', '.join(passed)}, {torch.get_num_threads()})")

    def _text(self, value: Any) -> str:
        """An argument of a call on the next line."""
        if isinstance(value, Tensor) and id(value) in self._names:
            name = self._names[id(value)]
            self._last[name] = len(self._lines)
            return name
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._text, value))}]"
        if value is None or isinstance(value, int):
            return repr(value)
        if not isinstance(value, _CONSTANTS):
            self.refusal = f"an argument is a {type(value).__name__} from elsewhere"
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._namespace)}"
        self._namespace[name] = value
        return name

    def _target(self, result: Any) -> str:
        """What the result of a call on the next line is assigned to."""
        if isinstance(result, (list, tuple)):
            return f"[{', '.join(map(self._target, result))}]"
        if result is None or id(result) in self._names:  # that of an operation in place
            return "_"
        if type(result) is not Tensor or result.device.type != "cpu" or result.layout != torch.strided:
            self.refusal = f"a result is a {type(result).__name__}, no plain tensor on a CPU"
        return self._name(result)

    def _name(self, tensor: Tensor, name: str = "") -> str:
        """Give a tensor of the next line a name, or that of another with the same memory and shape."""
        name = name or f"v{len(self._kept)}"
        self._kept.append(tensor)
        self._names[id(tensor)] = name
        self._last[name] = len(self._lines)
        return name
