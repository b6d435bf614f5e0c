"""Which columns of a population's rows hold which tensor of the network.

Symbols: P float32 columns of weights, Q float32 columns of statistics (batch-norm means and variances), B
int64 columns of counters (num_batches_tracked). Spans of P and Q start on 16 bytes; the padding between them
is zero.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastwi.errors import UserError

FLOATS_PER_SPAN_START = 4  # 16 bytes, one vector load
_MOST_DIMENSIONS = 64  # PyTorch's own bound
_MOST_ELEMENTS = 1 << 60

Tensors = Iterable[tuple[str, Sequence[int], bool]]  # name, shape, whether channels-last


@dataclass(frozen=True)
class Span:
    """The place of one tensor in a row: `offset` and `strides` in elements, `shape` as the module has it."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    def view(self, row_P: Tensor) -> Tensor:
        """The tensor inside a row [P] (or inside every row of [M, P]: the view is then [M, *shape]).

        No copy is made. The last dimension of `row_P` must be contiguous.
        """
        return row_P.as_strided(
            (*row_P.shape[:-1], *self.shape),
            (*row_P.stride()[:-1], *self.strides),
            row_P.storage_offset() + self.offset,
        )


@dataclass(frozen=True)
class Layout:
    """The spans of one architecture, in the module's named_parameters and named_buffers order.

    `keys` lists every key of the module's state dict, in its order, with the name of the span that holds it:
    tied tensors have one span and several keys.
    """

    parameters: tuple[Span, ...]
    statistics: tuple[Span, ...]
    counters: tuple[Span, ...]
    keys: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """The layout of `module`'s float32 parameters and its persistent float32 and int64 buffers.

        Weights of Conv2d and ConvTranspose2d are stored channels-last, everything else contiguously. A tensor
        under two names is stored once. Non-persistent buffers are left out, as they are from a state dict:
        each module keeps its own. Works on the meta device.

        Raises UserError for other dtypes, lazy parameters, extra state and parameters that overlap in memory
        without being the same tensor.
        """
        named_parameters, named_buffers = dict(module.named_parameters()), dict(module.named_buffers())
        for name, parameter in named_parameters.items():
            if is_lazy(parameter):
                raise UserError(f"parameter {name!r} has no shape yet; run one batch through the module first")
            if parameter.dtype != torch.float32:
                raise UserError(
                    f"parameter {name!r} has dtype {parameter.dtype}; a population holds float32 weights: "
                    "convert the module with .float() (engine.precision makes it train in bf16)"
                )
        overlap = first_overlap(named_parameters)
        if overlap:  # a population would silently untie them
            raise UserError(
                f"parameters {overlap[0]!r} and {overlap[1]!r} share memory but are two tensors; "
                "tie them by assigning the same nn.Parameter to both"
            )
        name_of = {id(tensor): name for name, tensor in (named_parameters | named_buffers).items()}
        keys = []
        for key, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in name_of:
                raise UserError(
                    f"state dict entry {key!r} is neither a parameter nor a buffer; a population holds "
                    "tensors alone: drop get_extra_state or the state-dict hook that adds it"
                )
            keys.append((key, name_of[id(tensor)]))
        persistent = {name for _, name in keys}
        for name in named_parameters:
            if name not in persistent:
                raise UserError(f"parameter {name!r} is missing from the module's state dict; a hook removed it")
        buffers = {name: buffer for name, buffer in named_buffers.items() if name in persistent}
        for name, buffer in buffers.items():
            if buffer.dtype not in (torch.float32, torch.int64):
                raise UserError(
                    f"buffer {name!r} has dtype {buffer.dtype}; a population holds float32 and int64 "
                    "buffers: convert it, or register it with persistent=False"
                )
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        conv_weights = {id(part.weight) for part in module.modules() if isinstance(part, convolutions)}
        parameters = [(name, p.shape, id(p) in conv_weights) for name, p in named_parameters.items()]
        statistics = [(name, b.shape, False) for name, b in buffers.items() if b.dtype == torch.float32]
        counters = [(name, b.shape, False) for name, b in buffers.items() if b.dtype == torch.int64]
        return cls._pack(parameters, statistics, counters, keys)

    @classmethod
    def _pack(
        cls, parameters: Tensors, statistics: Tensors, counters: Tensors, keys: Iterable[tuple[str, str]]
    ) -> "Layout":
        return cls(
            _spans(parameters, FLOATS_PER_SPAN_START),
            _spans(statistics, FLOATS_PER_SPAN_START),
            _spans(counters, 1),
            tuple((str(key), str(name)) for key, name in keys),
        )

    @functools.cached_property
    def buffers(self) -> tuple[Span, ...]:
        """Statistics and counters together, in the module's named_buffers order."""
        by_name = {span.name: span for span in (*self.statistics, *self.counters)}
        ordered = dict.fromkeys(name for _, name in self.keys if name in by_name)
        return tuple(by_name[name] for name in ordered)

    @functools.cached_property
    def P(self) -> int:
        """Columns of weights and of momentum, padding included: a multiple of 4."""
        return _columns(self.parameters, FLOATS_PER_SPAN_START)

    @functools.cached_property
    def Q(self) -> int:
        """Columns of statistics, padding included: a multiple of 4."""
        return _columns(self.statistics, FLOATS_PER_SPAN_START)

    @functools.cached_property
    def B(self) -> int:
        """Columns of counters."""
        return _columns(self.counters, 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of a member: weights, momentum, statistics and counters."""
        return 8 * self.P + 4 * self.Q + 8 * self.B

    @property
    def _groups(self) -> dict[str, tuple[Span, ...]]:
        return {"parameters": self.parameters, "statistics": self.statistics, "counters": self.counters}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all names, shapes, strides, offsets and ties; the same on every machine."""
        spans = [[[s.name, s.shape, s.strides, s.offset] for s in group] for group in self._groups.values()]
        return hashlib.sha256(json.dumps([*spans, self.keys], ensure_ascii=True).encode()).hexdigest()

    def difference(self, other: "Layout", names: tuple[str, str] = ("the first", "the second")) -> str | None:
        """The first difference in words, with `names` for this layout and the other; None for none."""
        for kind, spans in self._groups.items():
            first, second = ({span.name: span for span in each} for each in (spans, other._groups[kind]))
            for name in [name for name in {**first, **second} if first.get(name) != second.get(name)]:
                if name in first and name in second:
                    one, two = (f"{each[name].shape} strides {each[name].strides}" for each in (first, second))
                    if one != two:
                        return f"of the {kind}, {name!r} is {one} in {names[0]} and {two} in {names[1]}"
                else:
                    shape = (first | second)[name].shape
                    return f"of the {kind}, {name!r} {shape} is in {names[name not in first]} only"
            if list(first) != list(second):
                return f"the {kind} are in another order"
        changed = sorted(set(self.keys) ^ set(other.keys))
        if changed:
            return f"state dict key {changed[0][0]!r} is tied otherwise"
        return None if self.keys == other.keys else "the keys are in another order"

    def to_json(self) -> str:
        """The layout as text for a file's metadata; `from_json` reads it back."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        content = {
            kind: [[s.name, s.shape, s.strides != _strides(s.shape, False)] for s in spans]
            for kind, spans in self._groups.items()
        }
        return json.dumps({**content, "keys": self.keys, "fingerprint": self.fingerprint}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """The layout that `to_json` wrote. Raises ValueError where the text is not one, or was changed."""
        try:
            content = json.loads(text)
            layout = cls._pack(*(content[kind] for kind in ("parameters", "statistics", "counters", "keys")))
            fingerprint = content["fingerprint"]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a layout ({type(error).__name__}: {error})") from error
        if layout.fingerprint != fingerprint:
            raise ValueError("the layout does not match its own fingerprint")
        layout._require_possible()
        return layout

    def _require_possible(self) -> None:
        """Raise ValueError for what no network has: a file may say anything and still match its own fingerprint."""
        spans = (*self.parameters, *self.statistics, *self.counters)
        names = {span.name for span in spans}
        if len(names) != len(spans):
            raise ValueError("two of its tensors have one name")
        for span in spans:
            sizes = any(size < 0 for size in span.shape) or span.numel > _MOST_ELEMENTS
            if sizes or len(span.shape) > _MOST_DIMENSIONS:
                raise ValueError(f"{span.name!r:.60} has an impossible shape")
        if not {name for _, name in self.keys} <= names or len(dict(self.keys)) != len(self.keys):
            raise ValueError("the keys of its state dict are not those of its tensors")


def _strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Dense strides in elements: contiguous, or channels-last for [O, I, height, width].

    With one input channel (depthwise convolutions) both orders are the same in memory. Contiguous strides are given
    then: by channels-last ones torch chooses a kernel that returns garbage for the gradient of a bf16 weight on an
    image of one pixel.
    """
    if channels_last:
        _, inner, height, width = shape
        if inner != 1:
            return (height * width * inner, 1, width * inner, inner)
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _spans(tensors: Tensors, align: int) -> tuple[Span, ...]:
    """Spans for (name, shape, channels_last) triples, each start a multiple of `align` elements."""
    spans: list[Span] = []
    for name, sizes, channels_last in tensors:
        shape = tuple(int(size) for size in sizes)
        spans.append(Span(str(name), shape, _strides(shape, channels_last), _columns(spans, align)))
    return tuple(spans)


def _columns(spans: Sequence[Span], align: int) -> int:
    end = spans[-1].offset + spans[-1].numel if spans else 0
    return -(-end // align) * align


def first_overlap(named: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two tensors whose ranges of memory overlap, if there are any."""
    ranges = []
    for name, tensor in named.items():
        if tensor.numel() and not tensor.is_meta:
            start = tensor.data_ptr()
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            reach = 1 + sum((size - 1) * stride for size, stride in steps)
            ranges.append((start, start + reach * tensor.element_size(), name))
    ranges.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(ranges):
        if start < end:
            return first, second
    return None
