"""Whether networks are as sure as they are right: calibration error, Brier score, and loss after scaling.

Shapes: M networks, N images, K classes, B bins.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastwi.analysis.examples import LogitsEngine, log_probabilities
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population

BINS = 15
_MOST_LOG_TEMPERATURE = 4.0


class Calibration(NamedTuple):
    """Of one network on N images. Error and calibration errors in %, losses in nats.

    calibration_error: ECE of Guo, Pleiss, Sun, Weinberger 2017 (On Calibration of Modern Neural Networks), equation
    3, over `BINS` bins of equal width; adaptive: over bins of equally many images (Nguyen, O'Connor 2015, Posterior
    Calibration and Exploratory Analysis). brier: mean squared distance from the one-hot label, 0 to 2 (Brier 1950).
    temperature, scaled_loss: temperature scaling (Guo et al., section 4.2), fitted on each half of the images (even
    and odd positions) and measured on the other, as Ashukha et al. 2020 (Pitfalls of In-Domain Uncertainty
    Estimation) do. The temperature is the fits' geometric mean, above 1 for a network that is too sure.
    """

    error: float
    loss: float
    calibration_error: float
    adaptive_calibration_error: float
    brier: float
    temperature: float
    scaled_loss: float


def calibration_scores(
    engine: LogitsEngine, networks: Population, dataset: ResidentDataset, ensemble: bool = False
) -> list[Calibration]:
    """The calibration of each member on `dataset`; with `ensemble`, of the members' ensemble at the end.

    The ensemble's output is the mean of their probabilities. Raises UserError for fewer than 2 images.
    """
    found = list[Calibration]()
    total_NK = torch.tensor(-math.inf, dtype=torch.float64, device="cpu")
    for log_NK in log_probabilities(engine, networks, dataset):
        found.append(calibration_of(log_NK, dataset.labels_N))
        total_NK = torch.logaddexp(total_NK, log_NK.cpu())
    if ensemble:
        found.append(calibration_of(total_NK - math.log(networks.members), dataset.labels_N))
    return found


def calibration_of(log_NK: Tensor, labels_N: Tensor) -> Calibration:
    """The calibration of a network that gave the log probabilities `log_NK` for images of the classes `labels_N`.

    Raises UserError for fewer than 2 images: temperatures are fitted on one half and measured on the other.
    """
    log_NK = log_NK.double().cpu()
    labels_N = labels_N.cpu()
    images = len(labels_N)
    if images < 2:
        raise UserError(f"calibration on {images} images; give 2 or more")
    p_NK = log_NK.exp()
    confidence_N, class_N = p_NK.max(dim=1)
    right_N = (class_N == labels_N).double()
    # |accuracy - confidence| of a bin, weighted by its share of the images, is |sum of differences| / N.
    bin_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1
    rank_N = confidence_N.argsort(stable=True).argsort()
    errors = [
        100 * float(torch.bincount(place_N, right_N - confidence_N, BINS).abs().sum()) / images
        for place_N in (bin_N, rank_N * BINS // images)
    ]
    brier = (p_NK**2).sum(dim=1) - 2 * p_NK.gather(1, labels_N[:, None])[:, 0] + 1
    temperatures, scaled = list[float](), 0.0
    for fitted, measured in ((0, 1), (1, 0)):
        temperatures.append(_best_temperature(log_NK[fitted::2], labels_N[fitted::2]))
        other_nK, other_n = log_NK[measured::2], labels_N[measured::2]
        scaled += _scaled_loss(other_nK, other_n, temperatures[-1]) * len(other_n) / images
    return Calibration(
        error=100 - 100 * float(right_N.mean()),
        loss=float(functional.nll_loss(log_NK, labels_N)),
        calibration_error=errors[0],
        adaptive_calibration_error=errors[1],
        brier=float(brier.mean()),
        temperature=math.sqrt(math.prod(temperatures)),
        scaled_loss=scaled,
    )


def _scaled_loss(log_NK: Tensor, labels_N: Tensor, temperature: float) -> float:
    return float(functional.cross_entropy(log_NK / temperature, labels_N))


def _best_temperature(log_NK: Tensor, labels_N: Tensor) -> float:
    """The temperature of the least loss, which is convex in its reciprocal, in exp(-4) .. exp(4)."""
    from scipy import optimize  # takes a second to import

    bounds = (-_MOST_LOG_TEMPERATURE, _MOST_LOG_TEMPERATURE)
    found = optimize.minimize_scalar(
        lambda t: _scaled_loss(log_NK, labels_N, math.exp(t)), bounds=bounds, method="bounded"
    )
    return math.exp(found.x)
