"""Which columns of a population's rows hold which tensor of the network.

Symbols: P float32 columns of weights, Q float32 columns of statistics (batch-norm means and variances), B int64
columns of counters (num_batches_tracked). Spans of P and Q start on 16 bytes; the padding between them is zero.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastwi.errors import UserError

MATRICES = {
    "weights_MP": torch.float32,
    "momentum_MP": torch.float32,
    "statistics_MQ": torch.float32,
    "counters_MB": torch.int64,
}
"""The matrices of a population by name, with their dtypes."""

FLOATS_PER_SPAN_START = 4  # 16 bytes, one vector load
_KINDS = ("parameters", "statistics", "counters")
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
        """The tensor inside a row [P], or inside every row of [M, P]: then a view [M, *shape].

        The last dimension of `row_P` must be contiguous.
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
    tied tensors have one span and several keys. `moving`: rows of statistics end with P more columns, a moving
    average of the weights.
    """

    parameters: tuple[Span, ...]
    statistics: tuple[Span, ...]
    counters: tuple[Span, ...]
    keys: tuple[tuple[str, str], ...]
    moving: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """The layout of `module`'s float32 parameters and its persistent float32 and int64 buffers.

        Weights of Conv2d and ConvTranspose2d are stored channels-last, everything else contiguously. A tensor
        under two names is stored once. Raises UserError for what a population cannot hold.
        """
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        name_of = {id(tensor): name for name, tensor in (parameters | buffers).items()}
        keys = []
        for key, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in name_of:
                raise UserError(
                    f"state dict entry {key!r} is neither a parameter nor a buffer; a population holds "
                    "tensors alone: drop get_extra_state or the state-dict hook that adds it"
                )
            keys.append((key, name_of[id(tensor)]))
        persistent = {name for _, name in keys}
        missing = next((name for name in parameters if name not in persistent), None)
        if missing is not None:
            raise UserError(f"parameter {missing!r} is missing from the module's state dict; a hook removed it")
        held = {name: buffer for name, buffer in buffers.items() if name in persistent}
        for name, tensor in (parameters | held).items():
            if is_lazy(tensor):
                raise UserError(f"{name!r} has no shape yet; run one batch through the module first")
            if tensor.dtype != torch.float32 and (name in parameters or tensor.dtype != torch.int64):
                raise UserError(
                    f"{name!r} has dtype {tensor.dtype}; a population holds float32 parameters, and float32 and "
                    "int64 buffers: convert the module with .float() (engine.precision makes it train in bf16), or "
                    "register the buffer with persistent=False"
                )
        overlap = first_overlap(parameters | held)
        if overlap:  # a population would silently untie them
            raise UserError(
                f"{overlap[0]!r} and {overlap[1]!r} share memory but are two tensors; tie two parameters by "
                "assigning the same nn.Parameter to both, and register a clone as a buffer"
            )
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        # Not by attribute: a parametrized weight is computed then, and spectral norm changes its buffers.
        of_parts = (p.named_parameters(recurse=False) for p in module.modules() if isinstance(p, convolutions))
        channels_last = {id(weight) for named in of_parts for name, weight in named if name == "weight"}
        return cls._pack(
            [(name, p.shape, id(p) in channels_last) for name, p in parameters.items()],
            [(name, b.shape, False) for name, b in held.items() if b.dtype == torch.float32],
            [(name, b.shape, False) for name, b in held.items() if b.dtype == torch.int64],
            keys,
        )

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
    def widths(self) -> dict[str, int]:
        """The columns of each of `MATRICES`."""
        return dict(zip(MATRICES, (self.P, self.P, self.Q + self.P * self.moving, self.B), strict=True))

    @property
    def plain(self) -> "Layout":
        """The layout without moving averages."""
        return replace(self, moving=False) if self.moving else self

    def empty(self, members: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """`MATRICES` of so many members in fresh memory."""
        widths = self.widths
        return {name: torch.empty(members, widths[name], dtype=MATRICES[name], device=device) for name in MATRICES}

    @property
    def row_bytes(self) -> int:
        """Bytes of a member: weights, momentum, statistics and counters."""
        return sum(MATRICES[name].itemsize * width for name, width in self.widths.items())

    @property
    def _spans(self) -> tuple[Span, ...]:
        return self.parameters + self.statistics + self.counters

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all names, shapes, strides, offsets and ties; the same on every machine."""
        groups = (self.parameters, self.statistics, self.counters)
        spans = [[[s.name, s.shape, s.strides, s.offset] for s in group] for group in groups]
        content = [*spans, self.keys, *["moving"] * self.moving]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()

    def difference(self, other: "Layout", names: tuple[str, str] = ("the first", "the second")) -> str | None:
        """The first difference in words, with `names` for this layout and the other; None for none."""
        mine, theirs = ({span.name: span for span in layout._spans} for layout in (self, other))
        for name in {**mine, **theirs}:
            if name not in mine or name not in theirs:
                return f"{name!r} {(mine | theirs)[name].shape} is in {names[name in theirs]} only"
            one, two = mine[name], theirs[name]
            if (one.shape, one.strides) != (two.shape, two.strides):
                first = f"{one.shape} strides {one.strides} in {names[0]}"
                return f"{name!r} is {first} and {two.shape} strides {two.strides} in {names[1]}"
        if self.moving != other.moving:
            return f"a moving average of the weights (optimizer.ema_decay) is in {names[other.moving]} only"
        return None if self == other else "the tensors are in another order, or tied otherwise"

    @functools.cached_property
    def json(self) -> str:
        """The layout as text for a file's metadata; `from_json` reads it back."""
        content: dict[str, object] = {
            kind: [[s.name, s.shape, s.strides != _strides(s.shape, False)] for s in getattr(self, kind)]
            for kind in _KINDS
        }
        content |= {"keys": self.keys, "fingerprint": self.fingerprint} | ({"moving": True} if self.moving else {})
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """The layout whose `json` is `text`. Raises ValueError where it is not one, or was changed."""
        try:
            content = json.loads(text)
            layout = cls._pack(*(content[kind] for kind in (*_KINDS, "keys")))
            layout = replace(layout, moving=content.get("moving") is True)
            whole = layout.fingerprint == content["fingerprint"]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a layout ({type(error).__name__}: {error})") from error
        if not whole or not layout._is_possible():
            raise ValueError("the layout does not match its own fingerprint, or no network has such tensors")
        return layout

    def _is_possible(self) -> bool:
        """Whether a network may have it: a file may say anything, and still match its own fingerprint."""
        names = {span.name for span in self._spans}
        keys = dict(self.keys)
        if len(names) < len(self._spans) or len(keys) < len(self.keys) or not names.issuperset(keys.values()):
            return False
        return all(
            min(span.shape, default=0) >= 0
            and len(span.shape) <= _MOST_DIMENSIONS
            and math.prod(size or 1 for size in span.shape) <= _MOST_ELEMENTS
            for span in self._spans
        )


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
