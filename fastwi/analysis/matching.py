"""Permutation matching: the order of a network's units in which it is most like another network.

Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin: Merging Models modulo Permutation Symmetries, ICLR:

- Weight matching (section 3.2): the order pi that maximises <A, pi(B)> over all weights, by coordinate descent: one
  group of units at a time, the others as they are.
- Activation matching (section 3.1): the order that minimises ||Z_A - pi(Z_B)||^2 over activations Z on some images,
  that is maximises <Z_A, pi(Z_B)>; each group by itself.

Both solve assignment problems exactly (`best_order`). All pairs of networks take each step together.

Shapes: L pairs, M networks, E elements of a group, R units of an element on an axis.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastwi.analysis.activations import images_of, run_together
from fastwi.analysis.symmetry import Order, Place, Symmetry, best_order
from fastwi.data.resident import ResidentDataset
from fastwi.population import Population

_MOST_SWEEPS = 100
_LEAST_GAIN = 1e-7  # of the inner product, relative to both norms: less is rounding

Rows = Sequence[tuple[int, int]]
"""Pairs of members (a, b)."""


@torch.no_grad()
def match_weights(symmetry: Symmetry, members: Population, pairs: Rows, seed: int = 0) -> list[Order]:
    """Orders [L, E] of all groups that make member b of each pair as like member a as weight matching finds.

    No step lowers the inner product of the weights; the result is a local optimum. Groups are visited from the images
    on, and then in random order until none changes. Raises UserError for weights that are NaN or infinite.
    """
    a, moved = (members.clone_rows([pair[i] for pair in pairs]) for i in (0, 1))
    spans = {span.name: span for span in symmetry.layout.parameters}
    orders = symmetry.identity(len(pairs))
    similarity_L = _similarity(a, moved)
    least_L = _LEAST_GAIN * (_similarity(a, a) * _similarity(moved, moved)).sqrt()
    draw = np.random.default_rng(seed)
    visits = list(range(len(symmetry.groups)))
    for _ in range(_MOST_SWEEPS):
        changed = False
        for g in visits:
            group = symmetry.groups[g]
            gain_LEE = _no_gain(symmetry, g, len(pairs), a.device)
            for place in group.places:
                if place.name in spans:
                    two = (spans[place.name].view(each.weights_MP) for each in (a, moved))
                    _add_products(gain_LEE, place, *two)
            order_LE = _best_orders(symmetry, g, gain_LEE)
            # Of a layer whose inputs and outputs are one group the gain is not exact.
            tried_L = _similarity(a, symmetry.reorder(moved, [(group, order_LE)]))
            worse_L = (tried_L <= similarity_L + least_L).cpu().numpy()
            if worse_L.all():
                continue
            changed = True
            order_LE[worse_L] = np.arange(group.size)
            moved = symmetry.reorder(moved, [(group, order_LE)])
            similarity_L = _similarity(a, moved)
            orders[g] = np.take_along_axis(orders[g], order_LE, axis=1)
        if not changed:
            break
        draw.shuffle(visits)
    return orders


@torch.no_grad()
def match_activations(symmetry: Symmetry, members: Population, pairs: Rows, dataset: ResidentDataset) -> list[Order]:
    """Orders [L, E] of all groups that bring the activations of member b of each pair nearest to those of member a.

    Compared on `dataset` are the activations that layers with weights read, without augmentation, each network with
    its own batch-norm statistics. Raises UserError for activations that are NaN or infinite.
    """
    gains = [_no_gain(symmetry, g, len(pairs), members.device) for g in range(len(symmetry.groups))]
    reads: dict[str, list[tuple[Tensor, Place]]] = {}
    for gain_LEE, group in zip(gains, symmetry.groups, strict=True):
        for place in group.reads:
            reads.setdefault(place.name, []).append((gain_LEE, place))
    a_L, b_L = ([pair[i] for pair in pairs] for i in (0, 1))

    def add(node: str, values: list[Tensor]) -> list[Tensor]:
        if node in reads:
            every = torch.stack(values)
        for gain_LEE, place in reads.get(node, ()):
            _add_products(gain_LEE, place, every[a_L], every[b_L])
        return values

    modules = [symmetry.module(members, m) for m in range(members.members)]
    for images_NCHW in images_of(dataset):
        run_together(modules, images_NCHW, add)
    return [_best_orders(symmetry, g, gain_LEE) for g, gain_LEE in enumerate(gains)]


def _no_gain(symmetry: Symmetry, g: int, pairs: int, device: torch.device) -> Tensor:
    size = symmetry.groups[g].size
    return torch.zeros(pairs, size, size, dtype=torch.float64, device=device)


def _add_products(gain_LEE: Tensor, place: Place, a: Tensor, b: Tensor) -> None:
    """Add the inner product of each two elements over the tensors [L, ...], whose axis 1 + place.axis they are on."""
    elements = len(place.elements_E)
    at = torch.from_numpy(place.at_ER.ravel()).to(a.device)
    one, other = (x.movedim(1 + place.axis, 1).index_select(1, at).reshape(len(x), elements, -1) for x in (a, b))
    rows = torch.from_numpy(place.elements_E).to(a.device)
    gain_LEE[:, rows[:, None], rows] += (one @ other.transpose(1, 2)).double()


def _best_orders(symmetry: Symmetry, g: int, gain_LEE: Tensor) -> Order:
    return np.stack([best_order(symmetry.groups[g], gain_EE) for gain_EE in gain_LEE.cpu().numpy()])


def _similarity(a: Population, b: Population) -> Tensor:
    """The inner products of the weights of members l, float64 [L]."""
    return (a.weights_MP.double() * b.weights_MP).sum(dim=1)
