"""A population: M networks of one architecture as the rows of four matrices.

Symbols: M members; P columns of weights, Q of batch-norm statistics, B of counters (see `fastwi.population.layout`);
L new members, made of T rows in all.
"""

import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fastwi.config.averaging import momentum_weights
from fastwi.errors import UserError
from fastwi.files import atomic_open
from fastwi.kernels.combine import Terms, combine_rows_, copy_rows_
from fastwi.population import checkpoint
from fastwi.population.interpolation import planned
from fastwi.population.layout import MATRICES, Layout, Span

Member = tuple["Population", int]  # a population and a row of it


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """M networks as rows. `parameters`, `buffers` and `momentum` give views of a row.

    weights_MP, momentum_MP: float32 [M, P]; statistics_MQ: float32 [M, Q], with moving averages of the weights
    [M, Q + P]; counters_MB: int64 [M, B]; all on one device. Padding is zero. `len(population)`, `population[0]` and
    `population[1:3]` are as of a sequence of populations that share this one's memory.
    """

    layout: Layout
    weights_MP: Tensor
    momentum_MP: Tensor
    statistics_MQ: Tensor
    counters_MB: Tensor

    def __post_init__(self) -> None:
        for name, matrix in self._named().items():
            needed = (self.members, self.layout.widths[name]), MATRICES[name], self.device
            found = tuple(matrix.shape), matrix.dtype, matrix.device
            if found != needed:
                raise ValueError(f"{name} is {found}; the layout needs {needed}")

    def __len__(self) -> int:
        return self.members

    def __getitem__(self, rows: int | slice) -> "Population":
        if not isinstance(rows, slice):
            m = operator.index(rows)
            if not -self.members <= m < self.members:
                raise IndexError(f"member {m} of a population of {self.members}")
            rows = slice(m % self.members, m % self.members + 1)
        return Population(self.layout, *(matrix[rows] for matrix in self.matrices))

    def __repr__(self) -> str:
        return f"Population({self.members} members on {self.device}, {self.layout.P} columns of weights)"

    @classmethod
    def zeros(cls, layout: Layout, members: int, device: torch.device | str | None = None) -> "Population":
        """A population of zeros. Raises ValueError for no members."""
        population = cls.empty(layout, members, device)
        for matrix in population.matrices:
            matrix.zero_()
        return population

    @classmethod
    def empty(cls, layout: Layout, members: int, device: torch.device | str | None = None) -> "Population":
        """A population in fresh memory, whose values, padding included, are still to be written.

        Raises ValueError for no members.
        """
        if members < 1:
            raise ValueError(f"a population has at least 1 member, not {members}")
        return cls(layout, **layout.empty(members, device))

    @classmethod
    def from_modules(
        cls, modules: Sequence[nn.Module], device: torch.device | str | None = None, moving: bool = False
    ) -> "Population":
        """One member for each of `modules`, with zero momentum; on `device`, or where the first module is.

        moving: with moving averages of the weights, which begin as these.

        Raises UserError for modules that a population can't hold (see `Layout.of`) or whose non-persistent
        buffers differ, and ValueError for no modules, or naming the first tensor that is not the same in all of them.
        """
        if not modules:
            raise ValueError("from_modules needs at least one module")
        layout = replace(Layout.of(modules[0]), moving=moving)
        if device is None:
            device = next((p.device for p in modules[0].parameters()), None)
        population = cls.zeros(layout, len(modules), device)
        for m, module in enumerate(modules):
            _require_layout(layout.plain, Layout.of(module))
            require_equal_constants(modules[0], module, m)
            population._copy_in(m, _named_tensors(module))
        return population

    @staticmethod
    def gather(members_L: Sequence[Member], into: "Population | None" = None) -> "Population":
        """Copies of rows of populations, momentum included, in fresh memory or in `into`.

        The populations have one layout and are on one device; `into` has L members, none of them among those copied.
        Fresh memory takes a CPU several times as long as the copies themselves when it is used for the first time.
        Raises ValueError where that is not so, and for row numbers out of range.
        """
        used, rows_L2, made = _numbered(members_L, len(members_L), into)
        for destination, *sources in zip(*(population.matrices for population in (made, *used)), strict=True):
            copy_rows_(destination, sources, rows_L2[:, 0], rows_L2[:, 1])
        return made

    @staticmethod
    def averages(
        members_of_L: Sequence[Sequence[Member]],
        weights_of_L: Sequence[Sequence[float]],
        momentum: str | Sequence[Sequence[float]] | None = "reset",
        into: "Population | None" = None,
        statistics_of_L: Sequence[Sequence[float]] | None = None,
    ) -> "Population":
        """Average l is the sum over i of weights_of_L[l][i] x members_of_L[l][i], a row of any population.

        The populations have one layout and are on one device. Weights: any finite values; they need not sum to 1.
        Weights and statistics are summed in float64, in the order given, and rounded once, the same on every machine;
        counters are the maximum over the members that take part (weight not zero, so that a diverged member can be
        left out). Negative weights can make a variance negative: recompute statistics then.

        momentum: "reset" to zero, the same "average", "keep" that of the first member that takes part, or weights of
        its own; None leaves that of `into` as it is. into: L members that no average is made of; fresh memory where
        left out. statistics_of_L: weights of the statistics, where they are others.

        Raises ValueError where that is not so, for rows that take part and are not there, and for no members.
        """
        if momentum is None and into is None:
            momentum = "reset"
        if not all(map(len, members_of_L)):
            raise ValueError("an average needs at least one member")
        members_T = [member for members in members_of_L for member in members]
        used, rows_T2, made = _numbered(members_T, len(members_of_L), into)
        terms = Terms.of(list(map(len, members_of_L)), rows_T2, weights_of_L)
        combine_rows_(made.weights_MP, [population.weights_MP for population in used], terms)
        statistics = Terms.of(list(map(len, members_of_L)), rows_T2, statistics_of_L or weights_of_L)
        combine_rows_(made.statistics_MQ, [population.statistics_MQ for population in used], statistics)
        if momentum is not None:
            if isinstance(momentum, str):
                momentum = [momentum_weights(momentum, weights) for weights in weights_of_L]
            of_momentum = Terms.of(list(map(len, members_of_L)), rows_T2, momentum)
            combine_rows_(made.momentum_MP, [population.momentum_MP for population in used], of_momentum)
        made.counters_MB.zero_()
        first_row = np.cumsum([0, *map(len, used)])  # of each population in all their counters
        rows_T = torch.from_numpy(first_row[terms.matrix_T] + terms.row_T).to(made.device)
        counters_TB = torch.cat([population.counters_MB for population in used])[rows_T]
        sums_TB = torch.from_numpy(terms.sum_T).to(made.device)[:, None].expand_as(counters_TB)
        made.counters_MB.scatter_reduce_(0, sums_TB, counters_TB, "amax", include_self=False)
        return made

    def combine(self, weights_LM: ArrayLike, momentum: str = "reset") -> "Population":
        """`averages` of members of this population: average l is the sum over m of weights_LM[l, m] x member m.

        weights_LM: [L, M], any finite values. Raises ValueError for another shape.
        """
        weights = np.asarray(weights_LM, dtype=np.float64)
        if weights.shape[1:] != (self.members,):
            raise ValueError(f"weights_LM has shape {weights.shape}; give a row of {self.members} for each average")
        weights_of_L = weights.tolist()
        return self.averages([[(self, m) for m in range(self.members)]] * len(weights_of_L), weights_of_L, momentum)

    @property
    def members(self) -> int:
        """M."""
        return self.weights_MP.shape[0]

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights, momentum, statistics and counters of all members."""
        return self.weights_MP, self.momentum_MP, self.statistics_MQ, self.counters_MB

    @property
    def device(self) -> torch.device:
        """Where all four matrices are."""
        return self.weights_MP.device

    @property
    def moving_MP(self) -> Tensor:
        """The moving averages of the weights, [M, P]; [M, 0] where the layout has none."""
        return self.statistics_MQ[:, self.layout.Q :]

    @property
    def plain(self) -> "Population":
        """The members without moving averages, in the same memory."""
        matrices = self.weights_MP, self.momentum_MP, self.statistics_MQ[:, : self.layout.Q], self.counters_MB
        return Population(self.layout.plain, *matrices) if self.layout.moving else self

    def of_moving(self) -> "Population":
        """Copies of the members with the moving averages of their weights as weights, and their own statistics."""
        made = self.clone_rows(range(self.members))
        made.weights_MP.copy_(made.moving_MP)
        return made

    def parameters(self, m: int) -> dict[str, Tensor]:
        """Views of member m's weights by name, in named_parameters order; writing to them writes the row."""
        return _views(self.layout.parameters, self.weights_MP[m])

    def momentum(self, m: int) -> dict[str, Tensor]:
        """Views of member m's momentum by parameter name, shaped and strided as the parameters are."""
        return _views(self.layout.parameters, self.momentum_MP[m])

    def buffers(self, m: int) -> dict[str, Tensor]:
        """Views of member m's float32 statistics, and then of its int64 counters, by name."""
        statistics = _views(self.layout.statistics, self.statistics_MQ[m])
        return statistics | _views(self.layout.counters, self.counters_MB[m])

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m as an ordinary state dict: contiguous copies under the module's keys, in its order.

        Tied tensors are there under each of their keys. Momentum is not in it: no module has any.
        """
        tensors = self.parameters(m) | self.buffers(m)
        return {key: tensors[name].clone(memory_format=torch.contiguous_format) for key, name in self.layout.keys}

    def load_state_dict(self, m: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite member m with a state dict, whose values are converted, and its momentum with zero.

        Raises ValueError naming the first key that is missing, unknown or of another shape, or whose tensor is not
        that of the key it is tied to.
        """
        tensors = self.parameters(m) | self.buffers(m)
        names = dict(self.layout.keys)
        for key in [*names, *(key for key in state if key not in names)]:
            if key not in state:
                raise ValueError(f"the state dict lacks {key!r} of shape {tuple(tensors[names[key]].shape)}")
            if key not in names:
                raise ValueError(f"the state dict has {key!r}, which the population's network does not have")
            old, new = state[key], tensors[names[key]]
            if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
                raise ValueError(
                    f"{key!r} is {old.dtype} {tuple(old.shape)} in the state dict and "
                    f"{new.dtype} {tuple(new.shape)} in the population"
                )
        tied: dict[str, str] = {}
        for key, name in self.layout.keys:
            one, other = tied.setdefault(name, key), key
            if not _same_values(state[one], state[other]):
                raise ValueError(f"{one!r} and {other!r} are one tensor here, and two in the state dict")
        self._copy_in(m, {name: state[key] for key, name in self.layout.keys})

    def write_to(self, m: int, module: nn.Module) -> None:
        """Copy member m's weights, statistics and counters into `module`; ValueError for another layout."""
        _require_layout(self.layout.plain, Layout.of(module))
        tensors = _named_tensors(module)
        with torch.no_grad():
            for name, view in (self.parameters(m) | self.buffers(m)).items():
                tensors[name].copy_(view)

    def clone_rows(self, rows: Sequence[int] | Tensor) -> "Population":
        """A new population whose member i is a copy of member rows[i]: `[0] * 512` clones a parent.

        Momentum is copied too. Raises ValueError for row numbers out of range.
        """
        return self.gather([(self, row) for row in rows])

    def to(self, device: torch.device | str) -> "Population":
        """The population on `device`; itself where it is there already."""
        if self.device == torch.empty(0, device=device).device:
            return self
        return Population(self.layout, *(matrix.to(device) for matrix in self.matrices))

    def finite_M(self) -> list[bool]:
        """Whether all of a member's weights and statistics are finite, one a member."""
        finite_M = torch.ones(self.members, dtype=torch.bool, device=self.device)
        for matrix in (self.weights_MP, self.statistics_MQ):
            if matrix.shape[1]:
                # NaN where any of the row is. torch.aminmax reads once and, along rows on a CPU, takes 20 x as long.
                finite_M &= matrix.amin(1).isfinite() & matrix.amax(1).isfinite()
        found: list[bool] = finite_M.tolist()
        return found

    def lerp_rows_(
        self,
        pairs: Sequence[tuple[int, int]],
        alpha: float | Sequence[float] | Tensor = 0.5,
        other: "Population | None" = None,
        momentum: str = "reset",
    ) -> None:
        """Interpolate pairs of members in place: member a becomes (1 - alpha) a + alpha b.

        pairs: (a, b) row numbers; b counts in `other` where it is given. alpha: one number or one a pair; 0
        gives exactly a, 1 exactly b. Every read sees the members from before the call. Statistics are interpolated
        too, counters are the maximum of the two, and `momentum` is "reset" to zero, the same "average", or "keep"
        that of a (of b at alpha = 1). Raises ValueError for row numbers out of range, a row a that is named twice,
        populations of different layouts, and another alpha or momentum.
        """
        self.interpolation(pairs, alpha, other, momentum)()

    def interpolation(
        self,
        pairs: Sequence[tuple[int, int]],
        alpha: float | Sequence[float] | Tensor = 0.5,
        other: "Population | None" = None,
        momentum: str = "reset",
    ) -> Callable[[], None]:
        """What does `lerp_rows_` with these arguments each time it is called: for pairs that come again.

        Arguments are checked, and on a GPU carried there, once. It holds both populations. A call does not
        wait for the GPU. Raises as `lerp_rows_`.
        """
        momentum_weights(momentum, ())  # which refuses another
        source = self if other is None else other
        _require_layout(self.layout, source.layout)
        return planned(self, source, pairs, alpha, momentum)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all. Raises UserError where the disk is full or not writable."""
        with atomic_open(path) as stream:
            for piece in self.file_pieces():
                stream.write(piece)

    def file_pieces(self) -> Iterator[memoryview]:
        """The bytes that `save` writes, one piece after another."""
        return checkpoint.pieces(self.layout, self._named())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        layout: Layout | None = None,
        device: torch.device | str | None = None,
        member: int | None = None,
    ) -> "Population":
        """Read a file that `save` wrote, or its member `member` alone, to `device` (default: the CPU).

        Raises CheckpointError, in one line, for a file that is missing, damaged, foreign, of another layout than
        `layout` where that is given, or without that member.
        """
        stored, matrices = checkpoint.read(Path(path), member)
        if layout is not None:
            checkpoint.require_layout(Path(path), stored, layout)
        population = cls(stored, **matrices)
        return population if device is None else population.to(device)

    def _named(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in MATRICES}

    def _copy_in(self, m: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite member m with `tensors` by span name, and its momentum with zero."""
        with torch.no_grad():
            for name, view in (self.parameters(m) | self.buffers(m)).items():
                view.copy_(tensors[name])
            self.momentum_MP[m].zero_()
            if self.layout.moving:
                self.moving_MP[m].copy_(self.weights_MP[m])


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; NaN is the same as NaN."""
    return one is other or torch.allclose(one, other.to(one), rtol=0, atol=0, equal_nan=True)


def _views(spans: Sequence[Span], row: Tensor) -> dict[str, Tensor]:
    return {span.name: span.view(row) for span in spans}


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _numbered(
    members_T: Sequence[Member], members: int, into: Population | None
) -> tuple[list[Population], NDArray[np.int64], Population]:
    """Each population that is named, once; [T, 2]: each member's place among them, and its row there; `into`.

    In place of `into` None: fresh memory for so many members.
    """
    places: dict[Population, int] = {}
    rows_T2 = [(places.setdefault(population, len(places)), _row_number(row)) for population, row in members_T]
    if not places:
        raise ValueError("no members are named; at least one is needed")
    used = list(places)
    made = Population.empty(used[0].layout, members, used[0].device) if into is None else into
    for population in used:
        _require_layout(made.layout, population.layout)
    return used, np.array(rows_T2, dtype=np.int64), made


def _row_number(row: int | Tensor) -> int:
    """The row as a number. Raises ValueError for a truth value: Python and torch take True for 1."""
    if isinstance(row, bool) or (isinstance(row, Tensor) and row.dtype == torch.bool):
        raise ValueError("a mask is given for row numbers; give the numbers of the rows where it is true")
    return operator.index(row)


def _require_layout(layout: Layout, other: Layout) -> None:
    if other != layout:
        raise ValueError(f"two networks of different layouts: {layout.difference(other)}")


def require_equal_constants(first: nn.Module, module: nn.Module, m: int) -> None:
    """Raise UserError where a tensor that no state dict holds differs between modules: its values would be lost.

    The state dicts of both have the same keys.
    """
    held = {id(tensor) for each in (first, module) for tensor in each.state_dict(keep_vars=True).values()}
    own, theirs = _named_tensors(first), _named_tensors(module)
    for name in own | theirs:
        mine, other = own.get(name), theirs.get(name)
        if other is mine or {id(tensor) for tensor in (mine, other) if tensor is not None} <= held:
            continue
        if mine is None or other is None or other.dtype != mine.dtype or not torch.equal(mine, other.to(mine.device)):
            kind, fix = "non-persistent buffer", "register it with persistent=True"
            if isinstance(mine, nn.Parameter):
                kind, fix = "parameter", "remove the hook that takes it out of the state dict"
            raise UserError(
                f"{kind} {name!r} of module {m} differs from the first module's, and no state dict holds it; {fix}"
            )
