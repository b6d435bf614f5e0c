"""The curvature of the loss at a network, and the noise of its gradient.

L(w) is the mean cross-entropy (nats) over training images, without weight decay; g its gradient, H its Hessian.

- Products H v: two backward passes of the plain module in float32 (Pearlmutter 1994, Fast Exact Multiplication by the
  Hessian). The fused kernels can be differentiated once only. The kinks of ReLU and max pooling have no part in H.
- Largest and smallest eigenvalues of H: Lanczos with full reorthogonalisation (Golub & Van Loan, Matrix Computations,
  section 10.3). An eigenvalue of H lies within the residual of each value that is found.
- Trace of H: Hutchinson 1990, the mean of z H z over Rademacher vectors z.
- Gradient noise scale tr(S) / ||g||^2, S the covariance of the gradients of single images: McCandlish, Kaplan, Amodei
  et al. 2018, An Empirical Model of Large-Batch Training, equation 2.9; by its unbiased estimators of appendix A.1,
  from batches of one size and their union.
- Sharpness L(w + r g / ||g||) - L(w): Foret et al. 2021, Sharpness-Aware Minimization, equation 2.

Images, probes and the first Lanczos vector are the same for all networks of one layout.

Shapes: N images, B batches, V vectors, M members, P columns of weights.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastwi.analysis.evaluator import Evaluator, Values, finite
from fastwi.config.schema import AugmentConfig
from fastwi.data.noise import Noise, Stream, raw_words
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Report
from fastwi.errors import UserError
from fastwi.kernels.augment import augment
from fastwi.models.generators import seeded
from fastwi.population import Layout, Population

BATCHES = 20
"""Batches whose gradients give the errors of all but eigenvalues and trace."""

_COLUMNS = 2**16  # of gradients that are in float64 at one time
_TOGETHER = 128  # images whose graph is in memory for second derivatives
_AS_THEY_ARE = AugmentConfig(padding=0, flip=0.0)
_NOISE = Noise(0, statistics=True)  # of the images' order; no network trains on these streams


@dataclass(frozen=True)
class Curvature:
    """What was measured at one network. Each error is a standard error; that of an eigenvalue is its residual.

    The trace's is over probes, all others are over batches of images. NaN: not defined. eigenvalues_V: all that
    Lanczos found, the largest first, with their residuals.
    """

    images: int
    loss_nats: float
    loss_error: float
    largest_eigenvalue: float
    largest_eigenvalue_error: float
    smallest_eigenvalue: float
    smallest_eigenvalue_error: float
    trace: float
    trace_error: float
    gradient_norm: float
    gradient_norm_error: float
    noise_scale_images: float
    noise_scale_error: float
    sharpness_nats: float
    sharpness_error: float
    eigenvalues_V: Values
    residuals_V: Values

    def row(self) -> dict[str, float | None]:
        """All but the lists of eigenvalues as a row of a table; None where a value is not finite."""
        *names, _, _ = (field.name for field in dataclasses.fields(self))
        return {name: finite(getattr(self, name)) for name in names}


def curvature_cost(images: int, vectors: int, probes: int) -> int:
    """How many images `measure_curvature` reports of one network."""
    return images * (vectors + probes + 2)


def measure_curvature(
    evaluator: Evaluator,
    networks: Population,
    dataset: ResidentDataset,
    *,
    images: int = 500,
    vectors: int = 20,
    probes: int = 10,
    radius: float = 0.05,
    report: Report | None = None,
) -> list[Curvature]:
    """The curvature at each member, in evaluation mode with the member's own statistics.

    images: of `dataset`, without augmentation, at most so many (0: all), in whole batches. vectors: steps of Lanczos.
    probes: vectors z of the trace. radius: r of the sharpness. report: called with images done, `curvature_cost` in
    all for a network. Time of a vector: as of three to four training steps on the images. Memory: `BATCHES` or more,
    vectors and probes rows of weights, and the activations of 128 images four times. Raises UserError as
    `Evaluator.scores` does, for numbers out of range, and for a network that cannot be differentiated twice.
    """
    if min(images, vectors - 1, probes - 1) < 0 or radius <= 0:
        raise UserError("give images of 0 or more, vectors and probes of 1 or more, and a radius above 0")
    networks = evaluator.require_fit(networks, dataset)
    count = min(images or len(dataset), len(dataset))
    size = max(1, min(evaluator.config.optimizer.batch_size, count // BATCHES))
    count -= count % size
    x_NCHW, labels_N = _images(evaluator, dataset, 0, count, _AS_THEY_ARE)
    module, layout = evaluator.plain(), networks.layout
    probes_VP = torch.stack([_signs(layout, number + 1) for number in range(probes)]).to(evaluator.device)
    start_P = _signs(layout, 0).to(evaluator.device)
    found = []
    with _twice_differentiable():
        for m in range(networks.members):
            loss = _Loss(module, networks, m, x_NCHW, labels_N, report)
            found.append(_measure(loss, size, vectors, probes_VP, start_P, radius))
    return found


def _measure(loss: "_Loss", size: int, vectors: int, probes_VP: Tensor, start_P: Tensor, radius: float) -> Curvature:
    losses_B, gradients_BP = loss.gradients(size)
    mean_P = gradients_BP.mean(dim=0)
    norm, noise_scale, _ = gradient_noise(gradients_BP, size)
    step_P = mean_P * (radius / torch.linalg.vector_norm(mean_P))
    rise_B = loss.losses(size, step_P) - losses_B
    traces_V = (loss.products(probes_VP).double() * probes_VP).sum(dim=1).cpu().numpy()
    eigenvalues_V, residuals_V = lanczos(lambda v_P: loss.products(v_P[None])[0], start_P, vectors)
    return Curvature(
        len(losses_B) * size, *_mean(losses_B),
        float(eigenvalues_V[0]), float(residuals_V[0]), float(eigenvalues_V[-1]), float(residuals_V[-1]),
        *_mean(traces_V), *norm, *noise_scale, *_mean(rise_B), eigenvalues_V, residuals_V,
    )  # fmt: skip


def lanczos(product: Callable[[Tensor], Tensor], start_P: Tensor, vectors: int) -> tuple[Values, Values]:
    """Eigenvalues of the symmetric operator `product` in the Krylov space of `start_P`, and their residuals.

    Float64 [V], the largest first; V is `vectors`, or the dimension of the space where that is smaller. The largest
    and smallest come near to eigenvalues of the operator first. One NaN where a product is not finite.
    """
    basis_VP = start_P.new_zeros(vectors, len(start_P))
    next_P = start_P
    diagonal, beside = list[float](), [float(torch.linalg.vector_norm(start_P))]
    for v in range(vectors):
        basis_VP[v] = next_P / beside[-1]
        next_P = product(basis_VP[v])
        diagonal.append(float(next_P @ basis_VP[v]))
        before_P = torch.linalg.vector_norm(next_P)
        for _ in range(2):  # once leaves what rounding brings back
            next_P = next_P - (basis_VP[: v + 1] @ next_P) @ basis_VP[: v + 1]
        beside.append(float(torch.linalg.vector_norm(next_P)))
        if not np.isfinite(beside[-1]):
            return np.array([np.nan]), np.array([np.nan])
        if beside[-1] <= 10 * torch.finfo(next_P.dtype).eps * float(before_P):
            beside[-1] = 0.0  # the space is invariant: its eigenvalues are the operator's
            break
    tridiagonal_VV = np.diag(diagonal) + np.diag(beside[1:-1], 1) + np.diag(beside[1:-1], -1)
    values_V, ritz_VV = np.linalg.eigh(tridiagonal_VV)
    return values_V[::-1], np.abs(beside[-1] * ritz_VV[-1])[::-1]


def gradient_noise(gradients_BP: Tensor, size: int) -> tuple[tuple[float, float], ...]:
    """Of the gradients of B batches of `size` images: ||g||, tr(S) / ||g||^2 (images), tr(S). Each with its error.

    ||g|| is that over all images; in the scale ||g||^2 has no bias, and where it is not above 0 the scale is NaN.
    Errors are the jackknife's over batches.
    """
    gram_BB = torch.zeros(len(gradients_BP), len(gradients_BP), dtype=torch.float64, device=gradients_BP.device)
    for part_BC in gradients_BP.split(_COLUMNS, dim=1):
        gram_BB += part_BC.double() @ part_BC.double().T
    gram = gram_BB.cpu().numpy()
    own_B, count = gram.diagonal(), len(gram)

    def statistics(squares: Values, product: Values, batches: int) -> Values:
        """Of the mean of ||g_b||^2, and ||mean of g_b||^2."""
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (squares - product) * np.divide(batches, batches - 1)
            norm2 = product - variance / batches
            return np.array([np.sqrt(product), np.where(norm2 > 0, size * variance / norm2, np.nan), size * variance])

    whole = statistics(own_B.mean(), gram.mean(), count)
    if count < 3:
        return tuple((float(value), np.nan) for value in whole)
    product_B = (gram.sum() - 2 * gram.sum(axis=1) + own_B) / (count - 1) ** 2
    without_3B = statistics((own_B.sum() - own_B) / (count - 1), product_B, count - 1)
    errors = without_3B.std(axis=1) * np.sqrt(count - 1)
    return tuple((float(value), float(error)) for value, error in zip(whole, errors, strict=True))


def step_noise(
    evaluator: Evaluator, networks: Population, dataset: ResidentDataset, *, epoch: int = 0, batches: int = BATCHES
) -> Values:
    """The variance of training's gradient at each member, float64 [M]: E ||g_b - E g_b||^2, b a training batch.

    Batches of the evaluator's size, augmented, in training mode, so that batch norm has its part in it; `batches` of
    them, or an epoch's. Every member has the same draws, those of `epoch`. NaN for fewer than 2 batches.
    """
    networks = evaluator.require_fit(networks, dataset)
    size = evaluator.config.optimizer.batch_size
    count = min(batches, len(dataset) // size)
    if count < 2:
        return np.full(networks.members, np.nan)
    x_NCHW, labels_N = _images(evaluator, dataset, epoch, count * size, evaluator.config.augment)
    module = evaluator.plain().train()
    found = []
    for m in range(networks.members):
        _, gradients_BP = _Loss(module, networks, m, x_NCHW, labels_N).gradients(size)
        found.append(gradient_noise(gradients_BP, 1)[2][0])
    return np.array(found)


class _Loss:
    """The mean loss of one member over images, as a function of its weights."""

    def __init__(
        self,
        module: nn.Module,
        networks: Population,
        m: int,
        x_NCHW: Tensor,
        labels_N: Tensor,
        report: Report | None = None,
    ) -> None:
        self._module, self._x, self._labels, self._report = module, x_NCHW, labels_N, report
        self._layout, self._weights_P, self._buffers = networks.layout, networks.weights_MP[m], networks.buffers(m)

    def losses(self, size: int, step_P: Tensor) -> Values:
        """The loss of each batch of `size` images at w + step, float64 [B]."""
        with torch.no_grad():
            leaves = self._leaves(self._weights_P + step_P)
            return np.array([float(self._of(leaves, part)) for part in self._parts(size, passes=1)])

    def gradients(self, size: int) -> tuple[Values, Tensor]:
        """The loss of each batch of `size` images, and its gradient [B, P]."""
        leaves, losses = self._leaves(self._weights_P), []
        gradients_BP = self._weights_P.new_zeros(len(self._labels) // size, len(self._weights_P))
        for row_P, part in zip(gradients_BP, self._parts(size, passes=1), strict=True):
            loss = self._of(leaves, part)
            self._add(row_P, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), 1.0)
            losses.append(float(loss.detach()))
        return np.array(losses), gradients_BP

    def products(self, vectors_VP: Tensor) -> Tensor:
        """H v of each vector, [V, P]. All share the first backward pass."""
        leaves, found_VP = self._leaves(self._weights_P), torch.zeros_like(vectors_VP)
        parameters = list(leaves.values())
        for part in self._parts(_TOGETHER, passes=len(vectors_VP)):
            loss, share = self._of(leaves, part), len(self._labels[part]) / len(self._labels)
            first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            if not part.start:
                _require_smooth(first)
            for vector_P, into_P in zip(vectors_VP, found_VP, strict=True):
                along = [span.view(vector_P) for span in self._layout.parameters]
                second = torch.autograd.grad(first, parameters, along, retain_graph=True, materialize_grads=True)
                self._add(into_P, second, share)
        return found_VP

    def _leaves(self, weights_P: Tensor) -> dict[str, Tensor]:
        return {span.name: span.view(weights_P).detach().requires_grad_() for span in self._layout.parameters}

    def _of(self, leaves: dict[str, Tensor], part: slice) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}  # training writes to them
        x_NCHW = self._x[part].clone()  # a network may change it in place
        with seeded(part.start, self._x.device):
            logits_NK = torch.func.functional_call(self._module, {**leaves, **buffers}, (x_NCHW,))
        return functional.cross_entropy(logits_NK, self._labels[part])

    def _parts(self, size: int, passes: int) -> Iterator[slice]:
        """Each batch of `size` images; after it, its images are reported once for each of `passes`."""
        for first in range(0, len(self._labels), size):
            part = slice(first, first + size)
            yield part
            if self._report:
                self._report(passes * len(self._labels[part]))

    def _add(self, row_P: Tensor, gradients: tuple[Tensor, ...], times: float) -> None:
        for span, gradient in zip(self._layout.parameters, gradients, strict=True):
            span.view(row_P).add_(gradient, alpha=times)


def _require_smooth(gradients: Iterable[Tensor]) -> None:
    """Raise UserError where a function that made the gradients has no derivative of its own: torch takes it for 0."""
    to_see = [gradient.grad_fn for gradient in gradients]
    seen = set[Any]()
    while to_see:
        node = to_see.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith(("Error", "NotImplemented")):
            raise UserError("the network cannot be differentiated twice: a function in it is once_differentiable")
        to_see += [function for function, _ in node.next_functions]


def _images(
    evaluator: Evaluator, dataset: ResidentDataset, epoch: int, count: int, changes: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """The first `count` images in the order of `epoch`, float32 [N, C, H, W], and their labels."""
    draws = _NOISE.draws(epoch, len(dataset), changes.padding, changes.flip)
    each = (draws.order_N.astype(np.int64), draws.offset_N2.astype(np.int64), draws.flip_N)
    order, offset, flip = (torch.from_numpy(values[:count]).to(evaluator.device) for values in each)
    x_NCHW = augment(dataset.images_NHWC, order, offset, flip, dataset.table_C256, changes.padding)
    return x_NCHW, dataset.labels_N[order]


def _signs(layout: Layout, number: int) -> Tensor:
    """A row of random signs, float32 [P] on the CPU, and 0 in the padding between parameters."""
    words_P = raw_words(0, Stream.PROBES, number, layout.P)
    drawn_P = torch.from_numpy(np.where(words_P >> np.uint64(63), np.float32(1), np.float32(-1)))
    row_P = torch.zeros_like(drawn_P)
    for span in layout.parameters:
        span.view(row_P).copy_(span.view(drawn_P))
    return row_P


def _mean(values: Values) -> tuple[float, float]:
    """The mean and its standard error; NaN of one value."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Within the block attention is made of plain products, and convolutions on a GPU are in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 and on prefer another name for TF32
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.backends.cudnn.allow_tf32 = before
