"""Floors of training and evaluation, from runs in the same rounds: a copy's bandwidth, convolutions alone.

Memory: every output of a convolution is an activation that training must write and read again. The best streaming
scheme (batch norm and ReLU in the convolution's prologue, statistics in its epilogue, both gradients in one kernel)
moves each 8 times:

    images/s  <=  bandwidth / (8 * bytes of an activation * convolution outputs of an image)

Other schemes: 22 times eagerly, 17 with library convolutions and fused pointwise work, 11 with batch norm fused into
convolutions, 2 if activations stay on the chip. Evaluation writes each once and reads it once, and once more where a
residual branch leaves, which is at every second: 2.5 times. Code that keeps activations in a cache from one pass to
the next can exceed such a floor.

Convolutions alone: on a CPU arithmetic binds first. The bound is the time of the network's convolutions, in training
with both gradients, each layer in the fastest of PyTorch's two orders and, where it applies, fastwi's kernel, on
random numbers, nothing else.

Shapes: N images of a batch, C channels, H W of an image.
"""

import copy
import dataclasses
from collections import Counter
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.machine import free_memory, last_level_cache
from benchmarks.runner import GIGA, Floor, Run, Timings
from fastwi.kernels.winograd import WinogradConv2d, supported, use_winograd_

PASSES, EVALUATION_PASSES = 8, 2.5
"""Times that a convolution's output, or its gradient, passes through memory."""

WINOGRAD = "fastwi winograd"
ORDERS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
"""PyTorch's two orders of an activation."""


@dataclasses.dataclass(frozen=True)
class ConvolutionShape:
    """One convolution without its weights' values. `first`: its input is the images, which need no gradient."""

    channels_in: int
    channels_out: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    height: int
    width: int
    first: bool

    def __str__(self) -> str:
        kernel = f"{self.kernel[0]}x{self.kernel[1]}/{self.stride[0]}"
        return f"{self.channels_in}->{self.channels_out} {kernel} at {self.height}x{self.width}"

    def flops(self, training: bool) -> int:
        """Of a direct convolution of one image; in training with its gradients."""
        outputs = self.channels_out * (self.height // self.stride[0]) * (self.width // self.stride[1])
        products = outputs * self.channels_in // self.groups * self.kernel[0] * self.kernel[1]
        return 2 * products * (3 - self.first if training else 1)


def copy_floor(device: torch.device, bytes_each: float, name: str = "memory", size_bytes: int | None = None) -> Floor:
    """The rate at which units of `bytes_each` bytes pass at the bandwidth of a copy: bytes read and written.

    On a CPU an ordinary copy also reads the lines that it overwrites, which is not counted: code that updates in
    place can exceed 100 % of it. The buffers have `size_bytes`, by default twice the last-level cache (16 times on a
    GPU, so that a launch's latency is no part of the copy), but at most a third of free memory.
    """
    size_bytes = size_bytes or (16 if device.type == "cuda" else 2) * last_level_cache(device)
    source, target = torch.empty(2, max(1, min(size_bytes, free_memory(device) // 6) // 4), device=device)
    for piece in source.split(2**22):
        piece.normal_()

    def rate(timings: Timings) -> float:
        return 2 * source.nbytes / median(timings[f"{name} floor"]) / bytes_each

    return Floor(name, {f"{name} floor": lambda: target.copy_(source)}, rate)


def floors_of(
    network: nn.Module, image_HWC: torch.Size, batch: int, device: torch.device, dtype: torch.dtype, training: bool
) -> tuple[dict[str, float], list[Floor]]:
    """What an image moves at least, and the floors of training or evaluating `network` on batches of such images.

    Convolutions are timed on a CPU only: on a GPU the bandwidth binds.
    """
    shapes, outputs = convolutions(network, image_HWC)
    bytes_each = (PASSES if training else EVALUATION_PASSES) * dtype.itemsize * outputs
    floors = [copy_floor(device, bytes_each)]
    if device.type == "cpu":
        every = {shape: ways(shape, batch, dtype, training) for shape in shapes}

        def rate(timings: Timings) -> float:
            fastest = {
                shape: min(median(timings[f"{i}, {way}"]) for way in runs)
                for i, (shape, runs) in enumerate(every.items())
            }
            return batch / sum(count * fastest[shape] for shape, count in shapes.items())

        runs = {f"{i}, {way}": run for i, runs in enumerate(every.values()) for way, run in runs.items()}
        floors.append(Floor("convolutions", runs, rate))
    return {"GB": bytes_each / GIGA}, floors


def convolutions(network: nn.Module, image_HWC: torch.Size) -> tuple[Counter[ConvolutionShape], int]:
    """The convolutions that one image passes, with their counts, and the number of their outputs."""
    shapes: Counter[ConvolutionShape] = Counter()
    outputs = 0

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal outputs
        assert isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple)  # noqa: PT018
        height, width = inputs[0].shape[2:]
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.groups, height, width)
        shapes[ConvolutionShape(layer.in_channels, layer.out_channels, *sizes, outputs == 0)] += 1
        outputs += output.numel()

    network = copy.deepcopy(network).cpu().eval()  # an engine may have taken the original to its device
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(see)
    H, W, C = image_HWC
    with torch.no_grad():
        network(torch.zeros(1, C, H, W))
    return shapes, outputs


def ways(shape: ConvolutionShape, batch: int, dtype: torch.dtype, training: bool) -> dict[str, Run]:
    """Calls that compute the convolution on random numbers, in training its gradients too, by the name of the way.

    PyTorch in its two orders, and fastwi's kernel where it takes the convolution.
    """
    runs: dict[str, Run] = {}
    for way in (*ORDERS, WINOGRAD):
        order = ORDERS.get(way, torch.channels_last)
        layer = nn.Conv2d(
            shape.channels_in, shape.channels_out, shape.kernel, shape.stride, shape.padding,  # type: ignore[arg-type]
            groups=shape.groups, bias=False,
        )  # fmt: skip
        x_NCHW = torch.randn(batch, shape.channels_in, shape.height, shape.width).to(dtype, memory_format=order)
        if way == WINOGRAD:
            use_winograd_(layer)
            if not isinstance(layer, WinogradConv2d) or not supported(x_NCHW, layer.weight):
                continue
        else:
            layer = layer.to(dtype, memory_format=order)  # type: ignore[call-overload]
        runs[way] = _run(layer, x_NCHW, shape.first, training)
    return runs


def _run(layer: nn.Conv2d, x_NCHW: Tensor, first: bool, training: bool) -> Run:
    if not training:
        return torch.no_grad()(lambda: layer(x_NCHW))
    leaves = [layer.weight] if first else [x_NCHW.requires_grad_(), layer.weight]
    gradient_NCHW = torch.randn_like(layer(x_NCHW))
    return lambda: torch.autograd.grad(layer(x_NCHW), leaves, gradient_NCHW)
