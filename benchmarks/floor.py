"""The floors of training and evaluation, from what is measured in the same run: a copy's bandwidth, convolutions.

Memory: every output of a convolution is an activation that training must write and read again. The best streaming
scheme (batch norm and ReLU in the convolution's prologue, statistics in its epilogue, both gradients in one kernel)
moves each 8 times:

    images/s  <=  bandwidth / (8 * bytes of an activation * convolution outputs of an image)

Evaluation writes each once and reads it once, and once more where a residual branch leaves, which is at every second:
2.5 times. Code that keeps activations in a cache from one pass to the next can exceed such a floor.

Convolutions alone: on a CPU arithmetic binds first. The bound is the time of the network's convolutions, in training
with both gradients, each layer in the fastest of PyTorch's two orders and, where it applies, fastwi's kernel, on
random numbers, nothing else.

Shapes: N images of a batch, C channels, H W of an image.
"""

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import GIGA, CopyTask
from benchmarks.timing import Timing
from fastwi.engine import allocator
from fastwi.kernels.winograd import WinogradConv2d, supported, use_winograd_

PASSES = {
    "eager": 22,
    "library convolutions, fused pointwise": 17,
    "batch norm fused into convolutions": 11,
    "both gradients in one kernel": 8,
    "on-chip, saved once and read once": 2,
}
"""Times that a convolution's output, or its gradient, passes through memory in a training step, by scheme."""

ORDERS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
"""PyTorch's two orders of an activation."""

SCHEME = "both gradients in one kernel"
"""The scheme whose floor percentages are taken of."""

EVALUATION_PASSES = 2.5

_COPY = "copy"
_WINOGRAD = "winograd"


@dataclasses.dataclass(frozen=True)
class ConvolutionShape:
    """One convolution without its weights' values. `first`: its input is the images, which need no gradient."""

    channels_in: int
    channels_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    height: int
    width: int
    first: bool

    def __str__(self) -> str:
        kernel = f"{self.kernel[0]}x{self.kernel[1]}/{self.stride[0]}"
        return f"{self.channels_in}->{self.channels_out} {kernel} at {self.height}x{self.width}"


@dataclasses.dataclass(frozen=True)
class Floors:
    """What to time among a benchmark's contestants, and what follows from it."""

    copy: CopyTask
    outputs: int
    """Convolution outputs of one image."""
    shapes: Mapping[ConvolutionShape, int]
    """The network's convolutions, and how often each occurs."""
    batch: int
    dtype: torch.dtype
    training: bool
    runs: Mapping[str, Callable[[], object]]

    def images_per_s(self, timings: Mapping[str, Timing]) -> dict[str, float]:
        """The floors by name: "memory", and "convolutions" where they were timed."""
        passes = PASSES[SCHEME] if self.training else EVALUATION_PASSES
        floors = {"memory": self._memory_floor(timings, passes)}
        seconds = 0.0
        for shape, count in self.shapes.items():
            took = [
                timings[_name(shape, way)].median_s for way in (*ORDERS, _WINOGRAD) if _name(shape, way) in timings
            ]
            if not took:
                return floors
            seconds += count * min(took)
        return floors | {"convolutions": self.batch / seconds}

    def settings(self, timings: Mapping[str, Timing]) -> dict[str, Any]:
        """What the floors were computed from, for a JSON file."""
        said = {
            "copy_GB_per_s": self.copy.bandwidth_gbps(timings[_COPY]),
            "convolution_outputs_an_image": self.outputs,
            "floor_images_per_s": self.images_per_s(timings),
        }
        if self.training:
            by_scheme = {name: self._memory_floor(timings, passes) for name, passes in PASSES.items()}
            said["memory_floor_images_per_s_by_scheme"] = by_scheme
        return said

    def prepare(self) -> dict[str, Callable[[], object]]:
        """What to do untimed before each run: run it, so that no floor is low because a cache was cold."""
        return {name: functools.partial(_warm, run) for name, run in self.runs.items()}

    def _memory_floor(self, timings: Mapping[str, Timing], passes: float) -> float:
        element = torch.empty((), dtype=self.dtype).element_size()
        return self.copy.bandwidth_gbps(timings[_COPY]) * GIGA / (passes * element * self.outputs)


def floors_of(
    network: nn.Module, image_HWC: torch.Size, batch: int, device: torch.device, dtype: torch.dtype, training: bool
) -> Floors:
    """The floors of training or evaluating `network` on batches of such images.

    Convolutions are timed on a CPU only: on a GPU the bandwidth binds.
    """
    shapes, outputs = convolutions(network, image_HWC)
    copying = CopyTask.of(device)
    runs: dict[str, Callable[[], object]] = {_COPY: copying.run}
    if device.type == "cpu":
        for shape in shapes:
            for order, layout in ORDERS.items():
                runs[_name(shape, order)] = convolution_run(shape, batch, dtype, layout, training)
            own = winograd_run(shape, batch, dtype, training)
            if own is not None:
                runs[_name(shape, _WINOGRAD)] = own
    return Floors(copying, outputs, shapes, batch, dtype, training, runs)


def convolutions(network: nn.Module, image_HWC: torch.Size) -> tuple[Counter[ConvolutionShape], int]:
    """The convolutions that one image passes, with their counts, and the number of their outputs."""
    shapes: Counter[ConvolutionShape] = Counter()
    outputs = 0

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal outputs
        assert isinstance(layer, nn.Conv2d)
        height, width = inputs[0].shape[2:]
        kernel, stride, padding = map(_pair, (layer.kernel_size, layer.stride, layer.padding))
        channels = (layer.in_channels, layer.out_channels)
        shapes[ConvolutionShape(*channels, kernel, stride, padding, layer.groups, height, width, outputs == 0)] += 1
        outputs += output.numel()

    network = copy.deepcopy(network).cpu().eval()  # an engine may have taken the original to its device
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(see)
    H, W, C = image_HWC
    with torch.no_grad():
        network(torch.zeros(1, C, H, W))
    return shapes, outputs


def convolution_run(
    shape: ConvolutionShape, batch: int, dtype: torch.dtype, layout: torch.memory_format, training: bool
) -> Callable[[], object]:
    """A call that computes the convolution; in training its gradients too, the first layer's by its weights only."""
    kernel = (shape.channels_out, shape.channels_in // shape.groups, *shape.kernel)
    x_NCHW = torch.randn(batch, shape.channels_in, shape.height, shape.width).to(dtype, memory_format=layout)
    weight = torch.randn(kernel).to(dtype, memory_format=layout)

    def forward() -> Tensor:
        return torch.conv2d(x_NCHW, weight, None, shape.stride, shape.padding, 1, shape.groups)

    if not training:
        return torch.no_grad()(forward)
    gradient_NCHW = torch.randn_like(forward())

    def run() -> None:
        forward()
        torch.ops.aten.convolution_backward(
            gradient_NCHW, x_NCHW, weight, None, shape.stride, shape.padding, (1, 1), False, (0, 0), shape.groups,
            (not shape.first, True, False),
        )  # fmt: skip

    return run


def winograd_run(
    shape: ConvolutionShape, batch: int, dtype: torch.dtype, training: bool
) -> Callable[[], object] | None:
    """As `convolution_run`, by fastwi's kernel; None where it does not take the convolution."""
    layer = nn.Conv2d(
        shape.channels_in,
        shape.channels_out,
        shape.kernel,
        shape.stride,
        shape.padding,
        groups=shape.groups,
        bias=False,
    )
    use_winograd_(layer)
    x_NCHW = torch.randn(batch, shape.channels_in, shape.height, shape.width)
    x_NCHW = x_NCHW.to(dtype, memory_format=torch.channels_last)
    if not isinstance(layer, WinogradConv2d) or not supported(x_NCHW, layer.weight):
        return None
    if not training:
        return torch.no_grad()(functools.partial(layer, x_NCHW))
    leaves = [layer.weight] if shape.first else [x_NCHW.requires_grad_(), layer.weight]
    gradient_NCHW = torch.randn_like(layer(x_NCHW))
    return lambda: torch.autograd.grad(layer(x_NCHW), leaves, gradient_NCHW)


def _pair(value: Any) -> tuple[int, int]:
    """A layer's setting for height and width. Padding by a word ("same") is in none of the networks."""
    first, second = value
    return int(first), int(second)


def _warm(run: Callable[[], object]) -> None:
    allocator.keep_freed_memory()
    run()


def _name(shape: ConvolutionShape, way: str) -> str:
    return f"{shape}, {way}"
