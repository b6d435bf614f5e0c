"""The permutations of units that leave a network's function as it is, and networks permuted by them.

Units that are tied (`fastwi.analysis.units`) are one element, and move together. Elements that have units of the same
axes may change places; where group norms put them into groups, whole groups, and the elements within a group. Images
and logits stay in place. Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin, section 3, gives the permutations of some
networks by hand.

Shapes: M members, P columns of weights, E elements of a group, R units of an element on one axis.
"""

import copy
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fastwi.analysis.units import Layer, TiedUnits, Units
from fastwi.engine.fuse import trace
from fastwi.errors import UserError
from fastwi.models.generators import seeded
from fastwi.population import Layout, Population
from fastwi.population.layout import Span

Order = NDArray[np.int64]
"""Of a group, [E]: element e becomes what element order[e] was. Of several networks [M, E]."""


@dataclass(frozen=True)
class Tree:
    """Elements, and nodes, that may change places with each other: elements of one kind, and nodes that are alike."""

    kind: frozenset[str]
    children: "tuple[Tree | int, ...]"


class Place(NamedTuple):
    """Elements on axis `axis` of the tensor `name`: at_ER[i] are the places of the units of element elements_E[i]."""

    name: str
    axis: int
    elements_E: Units
    at_ER: Units


@dataclass(frozen=True, eq=False)
class Group:
    """Elements 0 .. E - 1 that are permuted together.

    kinds_E: elements of one kind may change places, as `tree` allows. places: where they are in parameters and
    buffers, by name; reads: in the activations that layers with weights read, by node.
    """

    kinds_E: Units
    tree: Tree
    places: tuple[Place, ...]
    reads: tuple[Place, ...]

    @property
    def size(self) -> int:
        """E."""
        return len(self.kinds_E)


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The groups of one architecture, its traced network, and its layers with weights in the order of their calls."""

    traced: fx.GraphModule
    layout: Layout
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, network: nn.Module, images_NCHW: Tensor) -> "Symmetry":
        """The symmetry of `network`, which takes float32 images such as these; two or more.

        Raises UserError, naming the node, where an operation's units cannot be permuted, where there are no units
        to permute, and where the permutations that were found change what the network computes on these images.
        """
        network = copy.deepcopy(network).eval().to(images_NCHW.device)
        traced = trace(network)
        if traced is None:
            raise UserError(f"{type(network).__name__} cannot be traced by torch.fx, which gives its permutations")
        layout = Layout.of(network)
        tied = TiedUnits(traced.eval(), [span.name for span in (*layout.parameters, *layout.statistics)])
        tied.run(images_NCHW)
        symmetry = cls(traced, layout, tuple(_groups(tied)), tuple(tied.layers))
        if not symmetry.groups:
            name = type(network).__name__
            raise UserError(
                f"{name} has no units to permute, so nothing to match; it takes 2 or more in a hidden layer"
            )
        symmetry.check(Population.from_modules([network], images_NCHW.device), images_NCHW)
        return symmetry

    @torch.no_grad()
    def check(self, population: Population, images_NCHW: Tensor, seed: int = 0) -> None:
        """Raise UserError where member 0, permuted at random, computes something else on these images.

        Its logits may differ by a hundredth of the largest one: a GPU's convolutions may be in TF32.
        """
        permuted = self.permute(population[:1], self.random(1, seed))
        found = list[Tensor]()
        for each in (population, permuted):
            with seeded(0, images_NCHW.device):  # what a network draws in evaluation is the same for both
                found.append(self.module(each, 0)(images_NCHW.clone()))  # it may change its images in place
        logits_NK, moved_NK = found
        apart, size = float((moved_NK - logits_NK).abs().max()), float(logits_NK.abs().max())
        if not apart <= 1e-2 * size:
            raise UserError(
                f"the network is not what its graph says: a permutation changes logits of {size:.3g} by {apart:.3g}"
            )

    def module(self, population: Population, m: int) -> fx.GraphModule:
        """The traced network with the weights and statistics of member m, in evaluation mode."""
        module = copy.deepcopy(self.traced).to(population.device)
        module.load_state_dict(population.state_dict(m), strict=False)  # it has what its graph uses alone
        return module.requires_grad_(False)

    def identity(self, members: int) -> list[Order]:
        """The orders [M, E] of all groups that change nothing."""
        return [np.tile(np.arange(group.size), (members, 1)) for group in self.groups]

    def random(self, members: int, seed: int) -> list[Order]:
        """Orders [M, E] of all groups, drawn evenly from those that are allowed."""
        draw = np.random.default_rng(seed)
        return [
            np.stack([best_order(group, draw.random((group.size, group.size))) for _ in range(members)])
            for group in self.groups
        ]

    def permute(self, population: Population, orders: Sequence[Order]) -> Population:
        """A copy of `population` with the elements of member m in the order orders[g][m] of each group g.

        Momentum is permuted too.
        """
        return self.reorder(population, zip(self.groups, orders, strict=True))

    def reorder(self, population: Population, orders: Iterable[tuple[Group, Order]]) -> Population:
        """`permute` by the orders of some groups."""
        moved: dict[str, list[tuple[Order, Place]]] = defaultdict(list)
        for group, order_ME in orders:
            for place in group.places:
                moved[place.name].append((order_ME, place))
        layout, members = self.layout, population.members
        weights_MP, statistics_MQ = (
            torch.from_numpy(_columns(spans, width, members, moved)).to(population.device)
            for spans, width in ((layout.parameters, layout.P), (layout.statistics, layout.Q))
        )
        return Population(
            layout,
            population.weights_MP.gather(1, weights_MP),
            population.momentum_MP.gather(1, weights_MP),
            population.statistics_MQ.gather(1, statistics_MQ),
            population.counters_MB.clone(),
        )


def _columns(
    spans: Iterable[Span], width: int, members: int, moved: Mapping[str, Sequence[tuple[Order, Place]]]
) -> Units:
    """The column that each column is copied from, int64 [M, width]."""
    columns_MP = np.tile(np.arange(width), (members, 1))
    for span in spans:
        if span.name not in moved:
            continue
        at = [np.tile(np.arange(size), (members, 1)) for size in span.shape]
        for order_ME, place in moved[span.name]:
            row_E = np.zeros(order_ME.shape[1], dtype=np.int64)
            row_E[place.elements_E] = np.arange(len(place.elements_E))
            from_MER = place.at_ER[row_E[order_ME[:, place.elements_E]]]
            at[place.axis][:, place.at_ER.ravel()] = from_MER.reshape(members, -1)
        grid = span.view(torch.arange(width, device="cpu")).numpy()
        for m in range(members):
            columns_MP[m, grid] = grid[np.ix_(*(of_axis[m] for of_axis in at))]
    return columns_MP


Pairs = list[tuple[int, int]]


def best_order(group: Group, gain_EE: NDArray[np.float64]) -> Order:
    """The allowed order [E] with the largest sum of gain[e, order[e]] over elements e.

    Exact: an assignment problem, within each group of a group norm and then between them. Raises UserError for a gain
    that is NaN or infinite.
    """
    if not np.isfinite(gain_EE).all():
        raise UserError("weights or activations of a network are NaN or infinite; leave it out of the matching")
    order = np.arange(group.size)
    _, pairs = _best(group.tree, group.tree, group.kinds_E, gain_EE)
    order[[e for e, _ in pairs]] = [other for _, other in pairs]
    return order


def _best(one: Tree | int, other: Tree | int, kinds_E: Units, gain_EE: NDArray[np.float64]) -> tuple[float, Pairs]:
    """The largest sum with what is below `other` in the places of what is below `one`, and the pairs of elements.

    -inf where the two are not alike.
    """
    from scipy.optimize import linear_sum_assignment

    if isinstance(one, int) and isinstance(other, int):
        return (float(gain_EE[one, other]), [(one, other)]) if kinds_E[one] == kinds_E[other] else (-np.inf, [])
    if isinstance(one, int) or isinstance(other, int):
        return -np.inf, []
    if one.kind != other.kind or len(one.children) != len(other.children):
        return -np.inf, []
    found: list[list[Pairs]] = []
    if all(isinstance(child, int) for child in (*one.children, *other.children)):
        a, b = np.array(one.children), np.array(other.children)
        gains = np.where(kinds_E[a][:, None] == kinds_E[b], gain_EE[np.ix_(a, b)], -np.inf)
    else:
        every = [[_best(a, b, kinds_E, gain_EE) for b in other.children] for a in one.children]
        gains = np.array([[gain for gain, _ in row] for row in every])
        found = [[pairs for _, pairs in row] for row in every]
    try:
        rows, columns = linear_sum_assignment(gains, maximize=True)
    except ValueError:  # none is allowed
        return -np.inf, []
    chosen = list(zip(rows.tolist(), columns.tolist(), strict=True))
    pairs = (
        [pair for i, j in chosen for pair in found[i][j]] if found else [(int(a[i]), int(b[j])) for i, j in chosen]
    )
    return float(gains[rows, columns].sum()), pairs


def _groups(tied: TiedUnits) -> Iterator[Group]:
    """The groups in which anything may move."""
    units: dict[int, list[int]] = defaultdict(list)
    for unit in range(len(tied.origin_U)):
        units[tied.element(unit)].append(unit)
    fixed = {tied.element(unit) for unit in tied.fixed}
    kinds: dict[Any, set[int]] = defaultdict(set)
    for element, its in units.items():
        kind: Any = element if element in fixed else frozenset(Counter(tied.origin_U[u] for u in its).items())
        kinds[kind].add(element)
    blocks: dict[frozenset[int], set[str]] = defaultdict(set)
    for node, parts in tied.blocks.items():
        for part in parts:
            blocks[frozenset(map(tied.element, part))].add(node)
    # Elements of one kind are permuted together, and so are those of one block.
    together: list[set[int]] = []
    for joined in itertools.chain(kinds.values(), map(set, blocks)):
        touched = [each for each in together if each & joined]
        together = [each for each in together if not each & joined] + [joined.union(*touched)]
    kind_of = {element: number for number, its in enumerate(kinds.values()) for element in its}
    for elements in sorted(map(sorted, together)):
        kinds_E = np.array([kind_of[element] for element in elements])
        if len(set(kinds_E.tolist())) < len(elements):
            row = {element: e for e, element in enumerate(elements)}
            inside = {
                frozenset(row[element] for element in each): names
                for each, names in blocks.items()
                if each <= row.keys()
            }
            named = ((name, axis, units_U) for name, axes in tied.axes.items() for axis, units_U in enumerate(axes))
            yield Group(
                kinds_E,
                _tree(len(elements), {each: names for each, names in inside.items() if len(each) > 1}),
                tuple(_places(tied, row, named)),
                tuple(_places(tied, row, tied.reads.values())),
            )


def _tree(size: int, blocks: Mapping[frozenset[int], set[str]]) -> Tree:
    """Elements 0 .. size - 1 below nodes of the blocks that they are in. Raises UserError for blocks that overlap."""
    left: dict[frozenset[int], Tree | int] = {frozenset([e]): e for e in range(size)}
    for block in sorted(blocks, key=lambda block: (len(block), sorted(block))):
        inside = [part for part in left if part & block]
        if any(not part <= block for part in inside):
            names = ", ".join(sorted(blocks[block]))
            raise UserError(f"the groups of channels of {names} overlap those of another group norm in part")
        left[block] = Tree(frozenset(blocks[block]), tuple(left.pop(part) for part in inside))
    return Tree(frozenset(), tuple(left.values()))


def _places(
    tied: TiedUnits, row: Mapping[int, int], axes: Iterable[tuple[str, int, Units | None]]
) -> Iterator[Place]:
    """Where the elements of `row` are on each of the axes: a place for those with as many units on it."""
    for name, axis, units_U in axes:
        at: dict[int, list[int]] = defaultdict(list)
        for place, unit in enumerate(() if units_U is None else units_U.tolist()):
            element = tied.element(unit)
            if element in row:
                at[row[element]].append(place)
        for count in sorted(set(map(len, at.values()))):
            chosen = sorted(e for e, places in at.items() if len(places) == count)
            yield Place(name, axis, np.array(chosen), np.array([at[e] for e in chosen]))
