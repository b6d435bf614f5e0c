"""REPAIR and variance collapse: what interpolation does to the statistics of a network's units, and their correction.

Jordan, Sedghi, Saukh, Entezari, Neyshabur 2023, REPAIR: REnormalizing Permuted Activations for Interpolation Repair,
ICLR: units of an interpolated network vary less than those of its ends (section 3). REPAIR (section 4) gives each
unit of the network at alpha the mean (1 - alpha) E[X_A] + alpha E[X_B], and the standard deviation likewise. In a
network with batch norm recomputed statistics do this (`Evaluator.recompute`). In others it is done here, at each
layer that has a weight and a bias, into which the correction goes.

Shapes: L interpolated networks, M members, C channels, N images.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.analysis.activations import images_of, run_together
from fastwi.analysis.symmetry import Symmetry
from fastwi.analysis.units import Layer
from fastwi.data.noise import Stream, permutation
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population

_TOGETHER = 8  # networks whose activations are in memory at one time
_LEAST_DEVIATION = 1e-6  # of a unit that is taken to vary

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of each unit, float64 [M, C] each, by the node of the layer: the mean of random batches'."""


def measured_layers(symmetry: Symmetry) -> list[Layer]:
    """The layers whose units are compared: all with weights but the last, and those that only norms follow.

    Without layer norms over several axes, whose weights are not of a unit each.
    """
    nodes = {node.name: node for node in symmetry.traced.graph.nodes}
    axes = {span.name: len(span.shape) for span in symmetry.layout.parameters}
    layers = [each for each in symmetry.layers if each.kind != "layer norm" or axes.get(each.weight, 1) == 1]
    norms = {layer.node for layer in layers if layer.kind.endswith("norm")}
    found = []
    for layer in layers:
        users = [user for user in nodes[layer.node].users if user.target is not getattr]  # such as of its dtype
        if not {user.name for user in users} <= norms and not any(user.op == "output" for user in users):
            found.append(layer)
    return found


def moments_of(symmetry: Symmetry, members: Population, dataset: ResidentDataset) -> Moments:
    """The moments of every member's units on `dataset`, without augmentation, with its own batch-norm statistics."""
    return _moments(symmetry, members, dataset, measured_layers(symmetry), {})


def variance_ratios(
    middle: Moments, ends: Moments, pairs: Sequence[tuple[int, int]]
) -> dict[str, NDArray[np.float64]]:
    """By layer, the variance of each interpolated network's units over that of its two ends', float64 [L].

    The sum over units, over the mean of the ends' sums. Below 1 it has collapsed. middle: of L networks. ends: of the
    members that `pairs` lists by number.
    """
    found = {}
    for node, (_, variance_LC) in middle.items():
        of_ends_M = ends[node][1].sum(dim=1)
        a_L, b_L = (of_ends_M[[pair[i] for pair in pairs]] for i in (0, 1))
        found[node] = (2 * variance_LC.sum(dim=1) / (a_L + b_L)).cpu().numpy()
    return found


@torch.no_grad()
def rescaled(
    symmetry: Symmetry,
    interpolated: Population,
    ends: Moments,
    pairs: Sequence[tuple[int, int]],
    alphas: Sequence[float],
    dataset: ResidentDataset,
) -> Population:
    """REPAIR without batch norm: a copy of the L interpolated networks, corrected on `dataset`.

    ends: `moments_of` the members that `pairs` lists by number; network l is at alphas[l] between pair l, and stays
    as it is at 0 and 1. The layers are corrected together, each behind the corrected ones. Raises UserError for a
    network without a layer for it.
    """
    calls = Counter(layer.weight for layer in symmetry.layers)
    layers = [
        layer
        for layer in measured_layers(symmetry)
        if layer.weight and layer.bias and calls[layer.weight] == 1 and layer.kind != "batch norm"
    ]
    if not layers:
        raise UserError("REPAIR: no layer of the network has a weight and a bias to correct")
    alpha_L1 = torch.tensor(alphas, dtype=torch.float64, device=interpolated.device)[:, None]
    targets = {}
    for layer in layers:
        mean_MC, variance_MC = ends[layer.node]
        mean_LC, deviation_LC = (
            torch.lerp(x_MC[[a for a, _ in pairs]], x_MC[[b for _, b in pairs]], alpha_L1)
            for x_MC in (mean_MC, variance_MC.sqrt())
        )
        targets[layer.node] = mean_LC, deviation_LC
    moments = _moments(symmetry, interpolated, dataset, layers, targets)
    result = interpolated.clone_rows(range(interpolated.members))
    spans = {span.name: span for span in symmetry.layout.parameters}
    is_end_L1 = (alpha_L1 == 0) | (alpha_L1 == 1)
    for layer in layers:
        scale_LC, shift_LC = _correction(*moments[layer.node], *targets[layer.node])
        scale_LC, shift_LC = torch.where(is_end_L1, 1.0, scale_LC), torch.where(is_end_L1, 0.0, shift_LC)
        weight, bias_LC = (spans[name].view(result.weights_MP) for name in (layer.weight, layer.bias))
        weight.copy_(weight.double() * scale_LC.view(*scale_LC.shape, *(1,) * (weight.ndim - 2)))
        bias_LC.copy_(bias_LC * scale_LC + shift_LC)
    return result


def _correction(mean: Tensor, variance: Tensor, to_mean: Tensor, to_deviation: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift that give units of these moments the mean and deviation wanted.

    A unit that does not vary is shifted alone.
    """
    deviation = variance.sqrt()
    varies = deviation > _LEAST_DEVIATION
    scale = torch.where(varies, to_deviation / deviation.clamp_min(_LEAST_DEVIATION), 1.0)
    return scale, to_mean - mean * scale


@torch.no_grad()
def _moments(
    symmetry: Symmetry,
    members: Population,
    dataset: ResidentDataset,
    layers: Sequence[Layer],
    targets: Moments,
) -> Moments:
    """The moments of the units of `layers`; with `targets`, of units behind layers that are corrected batch by batch.

    targets: by node, the mean and standard deviation that units get.
    """
    if members.members > _TOGETHER:
        parts = []
        for first in range(0, members.members, _TOGETHER):
            rows = slice(first, first + _TOGETHER)
            own = {node: (mean_MC[rows], deviation_MC[rows]) for node, (mean_MC, deviation_MC) in targets.items()}
            parts.append(_moments(symmetry, members[rows], dataset, layers, own))
        both = {node: zip(*(part[node] for part in parts), strict=True) for node in parts[0]}
        return {node: tuple(map(torch.cat, moments)) for node, moments in both.items()}  # type: ignore[misc]
    kinds = {layer.node: layer.kind for layer in layers}
    found: Moments = {}

    def see(node: str, values: list[Tensor]) -> Sequence[Tensor]:
        if node not in kinds:
            return values
        axis = -1 if kinds[node] in ("linear", "layer norm") else 2
        every_MC = torch.stack(values).movedim(axis, 1)
        variance_MC, mean_MC = (x_MC.double() for x_MC in torch.var_mean(every_MC.flatten(2), dim=2, correction=0))
        before = found.get(node, (torch.zeros_like(mean_MC), torch.zeros_like(mean_MC)))
        found[node] = before[0] + share * mean_MC, before[1] + share * variance_MC
        if node not in targets:
            return values
        scale, shift = (
            x_MC.to(every_MC).view(*x_MC.shape, *(1,) * (every_MC.ndim - 2))
            for x_MC in _correction(mean_MC, variance_MC, *targets[node])
        )
        return (every_MC * scale + shift).movedim(1, axis).unbind()

    modules = [symmetry.module(members, m) for m in range(members.members)]
    # In a random order, the same for all: in a dataset of folders the images of a class follow each other.
    order = torch.from_numpy(permutation(0, Stream.SUBSET, 1, len(dataset)).copy())
    for images_NCHW in images_of(dataset.part(order)):
        share = len(images_NCHW) / len(dataset)
        run_together(modules, images_NCHW, see)
    return found
