"""A population: M networks of one architecture as the rows of four matrices.

Symbols: M members; P columns of weights, Q of batch-norm statistics, B of counters (see
`fastwi.population.layout`).
"""

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastwi.errors import UserError
from fastwi.kernels.interpolate import interpolate_rows_, pair_alphas, row_numbers
from fastwi.population.layout import Layout, Span

MOMENTUM_TREATMENTS = ("reset", "average", "keep")

Member = tuple["Population", int]  # a population and a row of it


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """M networks as rows. `parameters`, `buffers` and `momentum` hand out views of a row.

    weights_MP, momentum_MP: float32 [M, P]; statistics_MQ: float32 [M, Q]; counters_MB: int64 [M, B]; one
    device. Momentum is always there, also where nothing trains: 4 P bytes a member. All padding is zero and
    stays so.
    """

    layout: Layout
    weights_MP: Tensor
    momentum_MP: Tensor
    statistics_MQ: Tensor
    counters_MB: Tensor

    def __post_init__(self) -> None:
        members = self.weights_MP.shape[0]
        for name, matrix, columns, dtype in (
            ("weights_MP", self.weights_MP, self.layout.P, torch.float32),
            ("momentum_MP", self.momentum_MP, self.layout.P, torch.float32),
            ("statistics_MQ", self.statistics_MQ, self.layout.Q, torch.float32),
            ("counters_MB", self.counters_MB, self.layout.B, torch.int64),
        ):
            if matrix.shape != (members, columns) or matrix.dtype != dtype or matrix.device != self.device:
                raise ValueError(
                    f"{name} is {matrix.dtype} {tuple(matrix.shape)} on {matrix.device}; "
                    f"the layout needs {dtype} {(members, columns)} on {self.device}"
                )

    def __len__(self) -> int:
        """M."""
        return self.members

    def __getitem__(self, rows: int | slice) -> "Population":
        """Member `rows` as a population of 1, or the members of a slice. No copy is made: memory is shared.

        Negative numbers count from the end. Raises IndexError for a member that is not there.
        """
        if isinstance(rows, slice):
            return self.select(rows)
        m = operator.index(rows)
        if not -self.members <= m < self.members:
            raise IndexError(f"member {m} of a population of {self.members}")
        m %= self.members
        return self.select(slice(m, m + 1))

    def __iter__(self) -> Iterator["Population"]:
        """Each member as a population of 1 that shares this one's memory."""
        return (self[m] for m in range(self.members))

    def __repr__(self) -> str:
        return f"Population({self.members} members on {self.device}, {self.layout.P} columns of weights)"

    @classmethod
    def zeros(cls, layout: Layout, members: int, device: torch.device | str | None = None) -> "Population":
        """A population of zeros: weights, momentum, statistics, counters. ValueError for no members."""
        if members < 1:
            raise ValueError(f"a population has at least 1 member, not {members}")
        return cls(
            layout,
            torch.zeros(members, layout.P, device=device),
            torch.zeros(members, layout.P, device=device),
            torch.zeros(members, layout.Q, device=device),
            torch.zeros(members, layout.B, dtype=torch.int64, device=device),
        )

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module], device: torch.device | str | None = None) -> "Population":
        """One member for each of `modules`, with zero momentum; on `device`, or where the first module is.

        Raises UserError for modules that a population can't hold (see `Layout.of`) or whose non-persistent
        buffers differ, and ValueError naming the first tensor that is not the same in all of them.
        """
        if not modules:
            raise ValueError("from_modules needs at least one module")
        layout = Layout.of(modules[0])
        if device is None:
            device = next((p.device for p in modules[0].parameters()), None)
        population = cls.zeros(layout, len(modules), device)
        for m, module in enumerate(modules):
            _require_layout(layout, module)
            _require_equal_constants(layout, modules[0], module, m)
            population._copy_in(m, _named_tensors(module))
        return population

    @classmethod
    def stack(cls, populations: Sequence["Population"]) -> "Population":
        """The members of all, in order, in fresh memory. ValueError for none, or for different layouts."""
        if not populations:
            raise ValueError("stack needs at least one population")
        first = populations[0]
        for other in populations[1:]:
            first.require_same_layout(other)
        rows = zip(*(population._matrices() for population in populations), strict=True)
        return cls(first.layout, *(torch.cat(matrices) for matrices in rows))

    @staticmethod
    def gather(members_L: Sequence[Member], into: "Population | None" = None) -> "Population":
        """Copies of rows of any populations. See `fastwi.population.rows.gather`."""
        from fastwi.population.rows import gather

        return gather(members_L, into)

    @property
    def members(self) -> int:
        """M."""
        return self.weights_MP.shape[0]

    @property
    def device(self) -> torch.device:
        """Where all four matrices are."""
        return self.weights_MP.device

    def parameters(self, m: int) -> dict[str, Tensor]:
        """Views of member m's weights by name, in named_parameters order; writing to them writes the row."""
        return _views(self.layout.parameters, self.weights_MP[m])

    def momentum(self, m: int) -> dict[str, Tensor]:
        """Views of member m's momentum by parameter name, shaped and strided as the parameters are."""
        return _views(self.layout.parameters, self.momentum_MP[m])

    def buffers(self, m: int) -> dict[str, Tensor]:
        """Views of member m's float32 statistics and int64 counters by name, in named_buffers order."""
        statistics = _views(self.layout.statistics, self.statistics_MQ[m])
        both = statistics | _views(self.layout.counters, self.counters_MB[m])
        return {span.name: both[span.name] for span in self.layout.buffers}

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m as an ordinary state dict: contiguous copies under the module's keys, in its order.

        Tied tensors are there under each of their keys. Momentum is not in it: no module has any.
        """
        tensors = self.parameters(m) | self.buffers(m)
        return {key: tensors[name].clone(memory_format=torch.contiguous_format) for key, name in self.layout.keys}

    def load_state_dict(self, m: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite member m with a state dict, and its momentum with zero: a state dict has none.

        Half- and double-precision values are converted. Raises ValueError naming the first key that is
        missing, too many or of another shape.
        """
        tensors = self.parameters(m) | self.buffers(m)
        names = dict(self.layout.keys)
        for key in [*names, *(key for key in state if key not in names)]:
            if key not in state:
                raise ValueError(f"the state dict lacks {key!r} of shape {tuple(tensors[names[key]].shape)}")
            if key not in names:
                raise ValueError(f"the state dict has {key!r}, which the population's network has not")
            old, new = state[key], tensors[names[key]]
            if old.shape != new.shape or old.is_floating_point() != new.is_floating_point():
                raise ValueError(
                    f"{key!r} is {old.dtype} {tuple(old.shape)} in the state dict and "
                    f"{new.dtype} {tuple(new.shape)} in the population"
                )
        self._copy_in(m, {name: state[key] for key, name in self.layout.keys})

    def write_to(self, m: int, module: nn.Module) -> None:
        """Copy member m's weights, statistics and counters into `module`; ValueError for another layout."""
        _require_layout(self.layout, module)
        tensors = _named_tensors(module)
        with torch.no_grad():
            for name, view in (self.parameters(m) | self.buffers(m)).items():
                tensors[name].copy_(view)

    def clone_rows(self, rows: Sequence[int] | Tensor) -> "Population":
        """A new population whose member i is a copy of member rows[i]: `[0] * 512` clones a parent.

        Momentum is copied too. Raises ValueError for row numbers out of range.
        """
        index = torch.from_numpy(row_numbers(rows, self.members, "rows")).to(self.device)
        return Population(self.layout, *(matrix.index_select(0, index) for matrix in self._matrices()))

    def select(self, rows: slice) -> "Population":
        """The members `rows` as a population that shares this one's memory. No copy is made."""
        return Population(self.layout, *(matrix[rows] for matrix in self._matrices()))

    def copy_row_(self, destination: int, source: int, other: "Population | None" = None) -> None:
        """Overwrite member `destination` with member `source` of `other`, or of this population."""
        giver = self if other is None else other
        self.require_same_layout(giver)
        for mine, theirs in zip(self._matrices(), giver._matrices(), strict=True):
            mine[destination].copy_(theirs[source])

    def to(self, device: torch.device | str) -> "Population":
        """The population on `device`; itself where it is there already."""
        if self.device == torch.empty(0, device=device).device:
            return self
        return Population(self.layout, *(matrix.to(device) for matrix in self._matrices()))

    def finite_M(self) -> list[bool]:
        """Whether all of a member's weights and statistics are finite, one a member."""
        matrices = [matrix for matrix in (self.weights_MP, self.statistics_MQ) if matrix.shape[1]]
        # All that a finite sum is made of is finite. Sums are quicker than extremes, but can overflow.
        if all(torch.isfinite(matrix.sum(dim=1)).all() for matrix in matrices):
            return [True] * self.members
        finite_M = torch.ones(self.members, dtype=torch.bool, device=self.device)
        for matrix in matrices:  # the extremes of a row are NaN where any of it is
            finite_M &= torch.isfinite(matrix.amax(dim=1)) & torch.isfinite(matrix.amin(dim=1))
        found: list[bool] = finite_M.tolist()
        return found

    @staticmethod
    def averages(
        members_of_L: Sequence[Sequence[Member]],
        weights_of_L: Sequence[Sequence[float]],
        momentum: str | None = "reset",
        into: "Population | None" = None,
    ) -> "Population":
        """L weighted averages of rows of any populations in one pass. See `fastwi.population.rows.averages`."""
        from fastwi.population.rows import averages

        return averages(members_of_L, weights_of_L, momentum, into)

    def combine(self, weights_LM: Tensor, momentum: str = "reset") -> "Population":
        """`averages` of members of this population: average l is the sum over m of weights_LM[l, m] x member m.

        weights_LM: float32 or float64 [L, M], any finite values.
        """
        if weights_LM.shape[1:] != (self.members,) or weights_LM.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"weights_LM is {weights_LM.dtype} {tuple(weights_LM.shape)}; "
                f"it needs to be float32 or float64, with a column for each of {self.members} members"
            )
        weights = weights_LM.detach().cpu().double().numpy()
        chosen_of_L = [np.flatnonzero(weights_M) if weights_M.any() else np.zeros(1, int) for weights_M in weights]
        return self.averages(
            [[(self, m) for m in chosen.tolist()] for chosen in chosen_of_L],
            [weights_M[chosen].tolist() for weights_M, chosen in zip(weights, chosen_of_L, strict=True)],
            momentum,
        )

    def lerp_rows_(
        self,
        pairs: Sequence[tuple[int, int]],
        alpha: float | Sequence[float] | Tensor = 0.5,
        into: Sequence[int] | None = None,
        other: "Population | None" = None,
        momentum: str = "reset",
    ) -> None:
        """Interpolate pairs of members in place: member into[l] becomes (1 - alpha) a + alpha b for pair l.

        pairs: (a, b) row numbers; b counts in `other` where it is given. alpha: one number or one a pair; 0
        gives exactly a, 1 exactly b. `into` defaults to the rows a. Every read sees the members from before
        the call (see `fastwi.kernels.interpolate`). Statistics are interpolated too, counters are the maximum
        of the two, and `momentum` is "reset" to zero, the same "average", or "keep" that of a (of b at alpha
        = 1).
        """
        require_treatment(momentum)
        source = self if other is None else other
        self.require_same_layout(source)
        a_L, b_L = [a for a, _ in pairs], [b for _, b in pairs]
        alphas = torch.from_numpy(pair_alphas(alpha, len(pairs)))
        c_L = a_L if into is None else list(into)
        interpolate_rows_(self.weights_MP, a_L, b_L, alphas, c_L, source.weights_MP)
        interpolate_rows_(self.statistics_MQ, a_L, b_L, alphas, c_L, source.statistics_MQ)
        rows = torch.tensor(c_L, dtype=torch.int64, device=self.device)
        if momentum == "reset":
            self.momentum_MP.index_fill_(0, rows, 0.0)
        else:
            kept = alphas if momentum == "average" else (alphas == 1).float()
            interpolate_rows_(self.momentum_MP, a_L, b_L, kept, c_L, source.momentum_MP)
        counts_a, counts_b = self.counters_MB[a_L], source.counters_MB[b_L]
        alphas_L1 = alphas[:, None].to(self.device)
        counts = torch.where(alphas_L1 == 0, counts_a, torch.maximum(counts_a, counts_b))
        self.counters_MB[rows] = torch.where(alphas_L1 == 1, counts_b, counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole population to a safetensors file. See `fastwi.population.checkpoint.save`."""
        from fastwi.population import checkpoint

        checkpoint.save(self, path)

    def file_pieces(self) -> Iterator[memoryview]:
        """The bytes that `save` writes. See `fastwi.population.checkpoint.pieces`."""
        from fastwi.population import checkpoint

        return checkpoint.pieces(self)

    @staticmethod
    def load(
        path: str | os.PathLike[str], layout: Layout | None = None, device: torch.device | str | None = None
    ) -> "Population":
        """Read a file that `save` wrote. See `fastwi.population.checkpoint.load`."""
        from fastwi.population import checkpoint

        return checkpoint.load(path, layout, device)

    @staticmethod
    def load_member(
        path: str | os.PathLike[str],
        m: int,
        layout: Layout | None = None,
        device: torch.device | str | None = None,
    ) -> "Population":
        """Read member m alone, as a population of 1. See `fastwi.population.checkpoint.load_member`."""
        from fastwi.population import checkpoint

        return checkpoint.load_member(path, m, layout, device)

    def _matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four matrices in the order of the fields."""
        return self.weights_MP, self.momentum_MP, self.statistics_MQ, self.counters_MB

    def _copy_in(self, m: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite member m with `tensors` by span name, and its momentum with zero."""
        with torch.no_grad():
            for name, view in (self.parameters(m) | self.buffers(m)).items():
                view.copy_(tensors[name])
            self.momentum_MP[m].zero_()

    def require_same_layout(self, other: "Population") -> None:
        """Raise ValueError unless `other` has this population's layout."""
        if other.layout != self.layout:
            raise ValueError(f"two populations of different layouts: {self.layout.difference(other.layout)}")


def _views(spans: Sequence[Span], row: Tensor) -> dict[str, Tensor]:
    """The tensors of one row by name."""
    return {span.name: span.view(row) for span in spans}


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _require_layout(layout: Layout, module: nn.Module) -> None:
    """Raise ValueError unless `module` has `layout`."""
    found = Layout.of(module)
    if found != layout:
        raise ValueError(f"the module has another layout than the population: {layout.difference(found)}")


def _require_equal_constants(layout: Layout, first: nn.Module, module: nn.Module, m: int) -> None:
    """Raise UserError where a buffer that no row holds differs between modules: its values would be lost."""
    held = {span.name for span in layout.buffers}
    here = dict(module.named_buffers())
    for name, buffer in first.named_buffers():
        if name in held or here.get(name) is buffer:
            continue
        same = name in here and here[name].dtype == buffer.dtype
        if not same or not torch.equal(buffer, here[name].to(buffer.device)):
            raise UserError(
                f"non-persistent buffer {name!r} of module {m} differs from the first module's, and a "
                "population does not hold it; register it with persistent=True"
            )


def require_treatment(momentum: str) -> None:
    """Raise ValueError for an unknown treatment of momentum."""
    if momentum not in MOMENTUM_TREATMENTS:
        raise ValueError(f"momentum treatment {momentum!r} is none of {', '.join(MOMENTUM_TREATMENTS)}")
