"""A network's convolutions on a CPU in float32: fastwi's kernel beside PyTorch's.

contiguous, channels-last    PyTorch (oneDNN) in either order
fastwi kernel                fastwi's: Winograd's algorithm; direct with stride 2 and for the first layer

For each convolution the time of a training step's part, forward and both gradients (the first layer has no input
gradient), and that of the forward pass alone, on random numbers. The floor is a direct convolution at the speed of a
large matrix product in the same rounds: Winograd's algorithm needs fewer products and can pass it.
"""

import sys
from statistics import median

import torch

from benchmarks.floor import OWN, convolutions, ways
from benchmarks.runner import GIGA, Case, Floor, Report, benchmark
from fastwi.models.registry import build_model

_PRODUCT = 1024  # rows and columns of the matrix product


@benchmark
def main(
    report: Report, model: str = "resnet20", width: float = 1.0, image: int = 32, batch: int = 128, rounds: int = 15,
    passes: tuple[str, ...] = ("step", "forward"),
) -> None:  # fmt: skip
    """Each convolution, and each pass, is a table."""
    layers, _ = convolutions(build_model(model, 10, width), torch.Size([image, image, 3]))
    for layer, count in layers:
        for each in passes:
            runs = ways(layer, batch, torch.float32, training=each == "step")
            cases = {way: Case(run, batch, run, static_memory=True) for way, run in runs.items()}
            flops = layer.flops(training=each == "step")
            name = f"{count} x {layer}"
            title = f"Convolutions of {model}, batch {batch}, float32; {name}, {each}"
            report.time(
                title, "images", cases, rounds, again=OWN,
                reference=[OWN] if OWN in cases else [*cases], each={"GFLOP": flops / GIGA},
                floors=[_direct(flops)], at={"convolution": name, "pass": each},
            )  # fmt: skip


def _direct(flops: int) -> Floor:
    """Images of so many operations at the speed of a large matrix product."""
    left, right = torch.randn(2, _PRODUCT, _PRODUCT)
    runs = {"product": lambda: left @ right}
    return Floor("direct", runs, lambda timings: 2 * _PRODUCT**3 / median(timings["product"]) / flops)


if __name__ == "__main__":
    sys.exit(main())
