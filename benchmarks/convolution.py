"""`python -m benchmarks.convolution`: a network's convolutions on a CPU, fastwi's kernel beside PyTorch's in float32.

contiguous, channels-last    PyTorch (oneDNN) in either order
winograd                     fastwi's kernel, where it takes the convolution; AGAIN is the same once more

For each convolution the time of a training step's part, forward and both gradients (the first layer has no input
gradient), and that of the forward pass alone, on random numbers. The floor is a direct convolution at the speed of a
large matrix product, measured in the same run: Winograd's algorithm needs fewer products and can pass it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import ORDERS, ConvolutionShape, convolution_run, convolutions, winograd_run
from benchmarks.machine import GIGA, describe_machine
from benchmarks.options import parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.timing import Timing, interleave
from fastwi.cli import run_command
from fastwi.engine import allocator
from fastwi.models.registry import build_model

WINOGRAD, AGAIN = "winograd", "winograd, again"
_PRODUCT = 1024  # rows and columns of the matrix product that tells the machine's speed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convolution", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet20", help="network (default: resnet20)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of its channels (default: 1)")
    parser.add_argument("--image", type=int, default=32, help="height and width of the images (default: 32)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (default: 15)")
    parser.add_argument("--out", type=Path, help="directory for convolution-cpu.json and .png")
    options = parse(parser, arguments, {"rounds": 3, "batch": 32})
    if min(options.batch, options.rounds, options.image) < 1:
        parser.error("counts must be at least 1")
    network = build_model(options.model, 10, options.width)
    shapes, _ = convolutions(network, torch.Size([options.image, options.image, 3]))
    allocator.keep_freed_memory()
    left, right = (torch.randn(_PRODUCT, _PRODUCT) for _ in range(2))
    runs: dict[str, Callable[[], object]] = {"product": lambda: left @ right}
    for shape in shapes:
        for training in (True, False):
            runs |= {_key(shape, way, training): run for way, run in _ways(shape, options.batch, training).items()}
    timings = interleave(runs, options.rounds, torch.device("cpu"), dict(runs), warmups=1)
    gflops = 2 * _PRODUCT**3 / timings.pop("product").median_s / GIGA
    report(shapes, timings, gflops, vars(options))
    return 0


def report(
    shapes: Mapping[ConvolutionShape, int], timings: Mapping[str, Timing], gflops: float, options: dict[str, Any]
) -> None:
    """Print the table; write it and a chart where a directory is given."""
    rows, measurements = [], []
    bars: dict[str, tuple[float, float, float]] = {}
    for shape, count in shapes.items():
        ways = [way for way in (*ORDERS, WINOGRAD, AGAIN) if _key(shape, way, True) in timings]
        best = min(timings[_key(shape, way, True)].median_s for way in ways if way in ORDERS)
        for way in ways:
            step, forward = (timings[_key(shape, way, training)] for training in (True, False))
            floor = floor_s(shape, options["batch"], gflops)
            rows.append((
                f"{count} x {shape}", way, f"{1e3 * step.median_s:.2f}",
                " - ".join(f"{1e3 * quartile:.2f}" for quartile in step.quartiles_s), f"{1e3 * forward.median_s:.2f}",
                f"{best / step.median_s:.2f} x", f"{100 * floor / step.median_s:.0f}",
            ))  # fmt: skip
            measurements.append({
                "convolution": str(shape), "count": count, "way": way, "step_s": list(step.seconds),
                "forward_s": list(forward.seconds), "floor_s": floor,
            })  # fmt: skip
            name = f"fastwi {shape}" if way == WINOGRAD else f"{shape}, {way}"
            if way != AGAIN:
                first, third = step.quartiles_s
                bars[name] = (1e3 * step.median_s, 1e3 * first, 1e3 * third)
    title = (
        f"Convolutions of {options['model']}, batch {options['batch']}, float32, {options['rounds']} interleaved "
        f"rounds; matrix product {gflops:.0f} GFLOP/s"
    )
    columns = ("convolution", "by", "step, ms", "quartiles", "forward, ms", "of PyTorch's best", "% of direct floor")
    print_table(title, columns, rows)
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    out = options["out"]
    if out is not None:
        settings = {name: value for name, value in options.items() if name != "out"}
        write_results(
            out / "convolution-cpu.json", "convolution", machine, settings | {"GFLOP_per_s": gflops}, measurements
        )
        plot_bars(out / "convolution-cpu.png", title, "ms of a training step", bars)


def floor_s(shape: ConvolutionShape, batch: int, gflops: float) -> float:
    """Seconds of a direct convolution and its gradients at so many GFLOP/s."""
    outputs = batch * shape.channels_out * (shape.height // shape.stride[0]) * (shape.width // shape.stride[1])
    products = outputs * shape.channels_in // shape.groups * shape.kernel[0] * shape.kernel[1]
    return 2 * products * (2 if shape.first else 3) / (gflops * GIGA)


def _ways(shape: ConvolutionShape, batch: int, training: bool) -> dict[str, Callable[[], object]]:
    runs = {way: convolution_run(shape, batch, torch.float32, layout, training) for way, layout in ORDERS.items()}
    own = winograd_run(shape, batch, torch.float32, training)
    return runs if own is None else runs | {WINOGRAD: own, AGAIN: own}


def _key(shape: ConvolutionShape, way: str, training: bool) -> str:
    return f"{shape}, {way}, {'step' if training else 'forward'}"


if __name__ == "__main__":
    sys.exit(main())
