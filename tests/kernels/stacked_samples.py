"""Inputs of the stacked kernels' tests, and bounds for their results.

A bound is what the arithmetic may lose, value by value: sums of n terms in float32 lose at most n eps of the terms'
absolute values, storing loses eps of the value. Where rounding could turn a ReLU over, inputs are drawn anew, or the
bound is the whole gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastwi.kernels.stacked_geometry import Geometry

EPS32 = torch.finfo(torch.float32).eps
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLEAR = 1e-5  # no pre-activation is nearer to 0, in units of its terms


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_geometry(
    generator: torch.Generator, channels_in: int, channels_out: int, window: int, stride: int
) -> Geometry:
    """A convolution of few small images, with sides from 1 to 9 and padding that keeps them."""

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    x_shape = (number(1, 2), number(1, 5), number(1, 9), number(1, 9), channels_in)
    weight_shape = (x_shape[0], channels_out, window, window, channels_in)
    return Geometry.of(x_shape, weight_shape, stride, window // 2)


def draw_weight(generator: torch.Generator, geometry: Geometry, dtype: torch.dtype, rows: bool = True) -> Tensor:
    """Weights as a view of rows [M, P] that hold other things before and after, 16-byte aligned in float32."""
    g = geometry
    numel = g.CO * g.K
    row_MP = torch.randn(g.M, 8 + -(-numel // 4) * 4 + 12, generator=generator).to(DEVICE, dtype)
    return row_MP[:, 8 : 8 + numel].view(g.weight_shape)


@dataclass(frozen=True)
class Prologue:
    """A batch norm's statistics, not those of x, and whether a ReLU follows."""

    stats_M4I: Tensor
    relu: bool


def draw_prologue(generator: torch.Generator, geometry: Geometry, relu: bool) -> Prologue:
    """Scales of either sign."""
    mean, weight, bias = (torch.randn(geometry.M, geometry.CI, generator=generator) for _ in range(3))
    inverse = torch.rand(mean.shape, generator=generator) + 0.5
    scale = weight * inverse
    return Prologue(torch.stack([mean, inverse, scale, bias - mean * scale], 1).to(DEVICE), relu)


def rows_of(stats_M4C: Tensor) -> tuple[Tensor, ...]:
    return stats_M4C.double()[:, None, None, None].unbind(-2)


def draw_clear(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, stats_M4C: Tensor) -> Tensor:
    """x whose pre-activations x scale + shift all have a sign that rounding can't change."""
    _, _, scale, shift = rows_of(stats_M4C)
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    while True:
        terms = (x.double() * scale).abs() + shift.abs()
        near = (x.double() * scale + shift).abs() <= CLEAR * terms
        if not near.any():
            return x
        x = torch.where(near, torch.randn(shape, generator=generator).to(DEVICE, dtype), x)


def conv64(a_MNHWI: Tensor, weight_MOHWI: Tensor, geometry: Geometry) -> Tensor:
    """The convolution in float64, as one grouped convolution of [N, M * C, H, W]: differentiable."""
    g = geometry
    a = a_MNHWI.double().permute(1, 0, 4, 2, 3).reshape(g.N, g.M * g.CI, g.H, g.W)
    weight = weight_MOHWI.double().permute(0, 1, 4, 2, 3).reshape(g.M * g.CO, g.CI, g.KH, g.KW)
    y = functional.conv2d(a, weight, None, g.stride, g.padding, groups=g.M)
    return y.view(g.N, g.M, g.CO, g.OH, g.OW).permute(1, 0, 3, 4, 2)


def activation64(x: Tensor, prologue: Prologue | None) -> tuple[Tensor, Tensor]:
    """a in float64, and a bound of what the kernel's own a may differ from it."""
    if prologue is None:
        return x.double(), torch.zeros_like(x, dtype=torch.float64)
    _, _, scale, shift = rows_of(prologue.stats_M4I)
    a = x.double() * scale + shift
    error = 2 * EPS32 * ((x.double() * scale).abs() + shift.abs())
    a = a.relu() if prologue.relu else a
    return a, error + torch.finfo(x.dtype).eps * (a.abs() + error)


def assert_within(found: Tensor, exact: Tensor, bound: Tensor, what: str = "") -> None:
    """Each value lies within its bound of the exact one, once stored in its dtype."""
    assert found.shape == exact.shape
    store = torch.finfo(found.dtype).eps * (exact.abs() + bound) + torch.finfo(found.dtype).smallest_normal
    worst = ((found.double() - exact).abs() / (bound + store)).max()
    assert worst <= 1, f"{what}: {worst:.2f} times what rounding may do"  # fails for NaN too


ALL = (1, 2, 3)  # images and places


@dataclass(frozen=True)
class ExactNorm:
    """Batch norm of x in float64, with what float32 may lose of it."""

    x: Tensor
    weight: Tensor  # [M, 1, 1, 1, C], as mean, inverse and bias
    bias: Tensor
    mean: Tensor
    inverse: Tensor
    training: bool

    @classmethod
    def of(
        cls, x: Tensor, weight_MC: Tensor, bias_MC: Tensor, running: tuple[Tensor, Tensor] | None, eps: float
    ) -> "ExactNorm":
        """With x's own statistics, or the running ones."""
        x64, (weight, bias) = x.double(), (p.double()[:, None, None, None] for p in (weight_MC, bias_MC))
        if running is None:
            mean, var = x64.mean(ALL, keepdim=True), x64.var(ALL, correction=0, keepdim=True)
        else:
            mean, var = (statistic.double()[:, None, None, None] for statistic in running)
        return cls(x64, weight, bias, mean, (var + eps).rsqrt(), running is None)

    @property
    def rows(self) -> int:
        return self.x[0, ..., 0].numel()

    @property
    def xhat(self) -> Tensor:
        return (self.x - self.mean) * self.inverse

    @property
    def xhat_error(self) -> Tensor:
        moved = self.rows * self.x.abs().mean(ALL, keepdim=True) if self.training else 0
        relative = (self.rows + 8) * EPS32 if self.training else 8 * EPS32
        return 4 * EPS32 * self.inverse * (self.x.abs() + self.mean.abs() + moved) + relative * self.xhat.abs()

    @property
    def output(self) -> Tensor:
        return self.xhat * self.weight + self.bias

    @property
    def output_error(self) -> Tensor:
        """Of x scale + shift, whose terms can be larger than their sum."""
        terms = (self.x.abs() + self.mean.abs()) * (self.weight * self.inverse).abs() + self.bias.abs()
        return self.xhat_error * self.weight.abs() + 8 * EPS32 * terms

    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        """dx, dweight and dbias [M, C] for the output's gradient g."""
        dbias, dweight = g.sum(ALL), (g * self.xhat).sum(ALL)
        means = (dbias[:, None, None, None] + self.xhat * dweight[:, None, None, None]) / self.rows
        dx = self.weight * self.inverse * (g - means if self.training else g)
        return {"dx": dx, "dweight": dweight, "dbias": dbias}

    def gradient_bounds(self, g: Tensor, g_error: Tensor) -> dict[str, Tensor]:
        """Of the same, where g is known within g_error."""
        size, xhat, lost = g.abs() + g_error, self.xhat.abs(), (2 * self.rows + 64) * EPS32
        dbias = (g_error + lost * size).sum(ALL)
        dweight = (g_error * xhat + size * self.xhat_error + lost * size * xhat).sum(ALL)
        dx = g_error + lost * size
        if self.training:
            whole_bias, whole_weight = size.sum(ALL), (size * (xhat + self.xhat_error)).sum(ALL)
            bias, weight, whole_bias, whole_weight = (
                total[:, None, None, None] / self.rows for total in (dbias, dweight, whole_bias, whole_weight)
            )
            dx = dx + bias + lost * whole_bias
            dx = dx + xhat * (weight + lost * whole_weight) + self.xhat_error * whole_weight
        return {"dx": (self.weight * self.inverse).abs() * dx, "dweight": dweight, "dbias": dbias}


def draw_norm(generator: torch.Generator, M: int, C: int) -> dict[str, Tensor]:
    """Weight, bias and running statistics [M, C], as views of rows that hold other things too."""
    matrix_MP, statistics_MQ = (torch.randn(M, 2 * C + 5, generator=generator).to(DEVICE) for _ in range(2))
    statistics_MQ[:, 2 + C : 2 + 2 * C].abs_().add_(0.3)
    return {
        "weight": matrix_MP[:, 1 : 1 + C], "bias": matrix_MP[:, 3 + C : 3 + 2 * C],
        "mean": statistics_MQ[:, :C], "var": statistics_MQ[:, 2 + C : 2 + 2 * C],
    }  # fmt: skip


def draw_activation(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """x with a mean and deviation of its own for each channel and member.

    x is standardised first: of a few values the deviation is now and then almost 0 by chance, and then rounding of x
    alone changes the gradient by any amount.
    """
    x = torch.randn(shape, generator=generator)
    x = (x - x.mean(ALL, keepdim=True)) / x.std(ALL, correction=0, keepdim=True)
    spread = torch.rand(shape[0], 1, 1, 1, shape[-1], generator=generator) * 3 + 0.2
    centre = torch.randn(shape[0], 1, 1, 1, shape[-1], generator=generator)
    return (x * spread + centre).to(DEVICE, dtype)
