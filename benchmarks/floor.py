"""Floors of training and evaluation, from runs in the same rounds: a copy's bandwidth, convolutions alone.

Memory: every output of a convolution is an activation that training must write and read again. The best streaming
scheme (batch norm and ReLU in the convolution's prologue, statistics in its epilogue, both gradients in one kernel)
moves each 8 times:

    images/s  <=  bandwidth / (8 * bytes of an activation * convolution outputs of an image)

Other schemes: 22 times eagerly, 17 with library convolutions and fused pointwise work, 11 with batch norm fused into
convolutions. Evaluation writes each once and reads it once, and once more where a residual branch leaves, which is at
every second: 2.5 times. Code that keeps activations in a cache can exceed such a floor.

Convolutions alone, on a CPU, where arithmetic binds first: the time of the network's convolutions on random numbers,
in training with both gradients, each layer in the fastest of PyTorch's two orders and fastwi's kernel.

Shapes: N images of a batch, C channels, H W of an image.
"""

import copy
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.runner import GIGA, Floor, Run, Timings
from benchmarks.task import Task
from fastwi.kernels.convolution import OwnConv2d, use_own_convolutions_

PASSES, EVALUATION_PASSES = 8, 2.5
"""Times that a convolution's output, or its gradient, passes through memory."""

OWN = "fastwi kernel"
ORDERS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
"""PyTorch's two orders of an activation."""

_COPIED = 2**28  # bytes: beyond caches
_COPIED_BY_GPU = 2**30  # a half millisecond of an H200: the start of its launch, some 5 us, is 1 % of what is timed


class Convolution(NamedTuple):
    """A layer, and what passes it. `first`: its input is the images, which need no gradient."""

    layer: nn.Conv2d
    input_CHW: torch.Size
    output_CHW: torch.Size
    first: bool

    def __str__(self) -> str:
        layer, (_, H, W) = self.layer, self.input_CHW
        kernel = f"{layer.kernel_size[0]}x{layer.kernel_size[1]}/{layer.stride[0]}"
        return f"{layer.in_channels}->{layer.out_channels} {kernel} at {H}x{W}"

    def flops(self, training: bool) -> int:
        """Of a direct convolution of one image; in training with its gradients."""
        products = self.output_CHW.numel() * self.layer.weight[0].numel()
        return 2 * products * (3 - self.first if training else 1)


def copy_floor(device: torch.device, bytes_each: float) -> Floor:
    """The rate at which units of `bytes_each` bytes pass at the bandwidth of a copy: bytes read and written.

    On a CPU an ordinary copy also reads the lines that it overwrites, which is not counted: code that updates in
    place can exceed 100 % of it.
    """
    copied = _COPIED if device.type == "cpu" else _COPIED_BY_GPU
    source, target = torch.rand(2, copied // 4, device=device)
    runs = {"copy": lambda: target.copy_(source)}
    return Floor("memory", runs, lambda timings: 2 * copied / median(timings["copy"]) / bytes_each)


def floors_of(task: Task, batch: int, training: bool) -> tuple[dict[str, float], list[Floor]]:
    """What an image moves at least, and the floors of training or evaluating the task's network on its images.

    Convolutions are timed on a CPU only: on a GPU the bandwidth binds.
    """
    layers, outputs = convolutions(task.network(), task.dataset.images_NHWC.shape[1:])
    bytes_each = (PASSES if training else EVALUATION_PASSES) * task.dtype.itemsize * outputs
    floors = [copy_floor(task.device, bytes_each)]
    if task.device.type == "cpu":
        every = {str(i): ways(layer, batch, task.dtype, training) for i, (layer, _) in enumerate(layers)}
        runs = {f"{i}, {way}": run for i, of in every.items() for way, run in of.items()}

        def rate(timings: Timings) -> float:
            fastest = [min(median(timings[f"{i}, {way}"]) for way in of) for i, of in every.items()]
            return batch / sum(count * seconds for (_, count), seconds in zip(layers, fastest, strict=True))

        floors.append(Floor("convolutions", runs, rate))
    return {"GB": bytes_each / GIGA}, floors


def convolutions(network: nn.Module, image_HWC: torch.Size) -> tuple[list[tuple[Convolution, int]], int]:
    """The convolutions that one image passes, equal ones once with their count; and the number of their outputs."""
    found: dict[Any, tuple[Convolution, int]] = {}
    outputs = 0

    def see(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal outputs
        seen = Convolution(layer, inputs[0].shape[1:], output.shape[1:], first=outputs == 0)
        key = (str(layer), *seen[1:])
        found[key] = (seen, found.get(key, (seen, 0))[1] + 1)
        outputs += output.numel()

    network = copy.deepcopy(network).cpu().eval()  # an engine may have taken the original to its device
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(see)
    with torch.no_grad():
        network(torch.zeros(1, image_HWC[2], *image_HWC[:2]))
    for seen, _ in found.values():
        seen.layer._forward_hooks.clear()
    return list(found.values()), outputs


def ways(convolution: Convolution, batch: int, dtype: torch.dtype, training: bool) -> dict[str, Run]:
    """Calls that compute the convolution on random numbers, in training its gradients too, by the name of the way.

    PyTorch in its two orders, and fastwi's kernel where it takes the convolution.
    """
    runs: dict[str, Run] = {}
    for way in (*ORDERS, OWN):
        order = ORDERS.get(way, torch.channels_last)
        layer = copy.deepcopy(convolution.layer)
        x_NCHW = torch.randn(batch, *convolution.input_CHW).to(dtype, memory_format=order)
        layer = layer.to(dtype, memory_format=order)  # type: ignore[call-overload]
        if way == OWN:
            use_own_convolutions_(layer)
            if not isinstance(layer, OwnConv2d) or layer.kernel(x_NCHW) is None:
                continue
        runs[way] = _run(layer, x_NCHW, convolution.first, training)
    return runs


def _run(layer: nn.Conv2d, x_NCHW: Tensor, first: bool, training: bool) -> Run:
    if not training:
        return torch.no_grad()(lambda: layer(x_NCHW))
    leaves = [layer.weight] if first else [x_NCHW.requires_grad_(), layer.weight]
    gradient_NCHW = torch.randn_like(layer(x_NCHW))
    return lambda: torch.autograd.grad(layer(x_NCHW), leaves, gradient_NCHW)
