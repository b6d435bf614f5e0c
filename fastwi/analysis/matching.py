"""Permutation matching: the order of a network's units in which it is most like another network.

Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin: Merging Models modulo Permutation Symmetries, ICLR.

- Weight matching (section 3.2): the order pi that maximises <A, pi(B)> over all weights, by coordinate descent: one
  group of units at a time, the others as they are.
- Activation matching (section 3.1): the order that minimises ||Z_A - pi(Z_B)||^2 over the activations Z on some
  images, that is maximises <Z_A, pi(Z_B)>; each group by itself.

Both solve assignment problems exactly (`best_order`). All pairs of networks go through each step together.

Shapes: L pairs, P columns of weights, E elements of a group, R units of an element, M networks, N images.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from fastwi.analysis.symmetry import Group, Order, Place, Symmetry, best_order
from fastwi.population import Population

_MOST_SWEEPS = 100
_LEAST_GAIN = 1e-6  # of the similarity, relative: less is rounding


@torch.no_grad()
def match_weights(symmetry: Symmetry, a: Population, b: Population, seed: int = 0) -> list[Order]:
    """Orders [L, E] of all groups for members of `b`, in which member l is most like member l of `a`.

    Groups are visited in random order until none changes; the first time in the order of the network. It is a local
    optimum of the inner product of weights, which no step lowers.
    """
    draw = np.random.default_rng(seed)
    orders = symmetry.identity(b.members)
    moved, score_L = b, _similarity(a, b)
    visits: Sequence[int] = range(len(symmetry.groups))
    for _ in range(_MOST_SWEEPS):
        changed = False
        for g in visits:
            gain_LEE = sum(_products(symmetry, place, a, moved, symmetry.groups[g]) for place in symmetry.groups[g].places)
