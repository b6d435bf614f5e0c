"""Every kernel of a training step, compiled for a GPU that is not there.

The `stacked` or `halo` engine's own step runs on tensors without values ("meta") behind a driver that pretends to
be a GPU: launches are compiled as for that GPU and recorded, and nothing is executed. So grids, tiles, alignment and
specialisation are those of the engine's code. What a step lacks is called in the same way.

A process imports this module for one Triton: `trace` must run before anything else imports fastwi's kernels.
"""

import contextlib
import dataclasses
import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernels_model import Launch
from benchmarks.pretended import pretend_driver

IN_PLACE = {"weights_MP", "momentum_MP"}  # arguments that are read and written
HALO_BACKWARD_TRIPS = {16: (1, 3, 2), 32: (1, 3, 4), 64: (4, 2, 3, 8)}
"""By channels: trips of the loops within backward.cu's loop over tiles, for the images of a CIFAR ResNet. They load
dy, go over the columns of taps of dx (of 64 channels for half of a block at a time), and over pieces of dw."""
NODES_NEVER = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift", "_reshape_alias")


@dataclasses.dataclass
class Recorded:
    """A launch, the hash of its kernel, and its code."""

    launch: Launch
    kernel: str
    ptx: str
    cubin: bytes


class Recorder:
    """What a block launches by Triton, and what else it runs by torch: (operation, bytes)."""

    def __init__(self) -> None:
        self.launches, self.others = list[Recorded](), list[tuple[str, int]]()
        self.outputs = 0  # values that convolutions make


class Traced(NamedTuple):
    """Triton's version and directory, and what a step and `apart` launch by it."""

    triton: str
    directory: str
    step: Recorder
    apart: Recorder


class _Others(TorchDispatchMode):
    """Records operations that read or write memory."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name, returns = function.__name__.split(".")[0], function._schema.returns
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        moved = sum(map(_bytes, _tensors(args))) + sum(map(_bytes, _tensors(result)))
        if moved and not view and not name.startswith(NODES_NEVER):
            self._recorder.others.append((name, moved))
        return result


@contextlib.contextmanager
def recorded(arch: int) -> Iterator[Recorder]:
    """Launches inside the block are compiled for `arch` and recorded, not executed."""
    from triton.runtime.jit import JITFunction

    from fastwi.kernels import gpu
    from fastwi.kernels.halo import backward, build, conv

    recorder, run = Recorder(), JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        named = dict(zip(self.arg_names, args, strict=False)) | options
        asm, facts = kernel.asm, kernel.metadata
        launch = _launch(self, named, math.prod(grid), facts.num_warps, facts.shared)
        recorder.outputs += named["y_MRO"].numel() if "y_MRO" in named else 0
        recorder.launches.append(Recorded(launch, kernel.hash, asm["ptx"], asm["cubin"]))

    def record_halo(kernel: Any, grid: tuple[int, int, int], *arguments: Any) -> None:
        launch = _halo_launch(kernel, grid, arguments)
        recorder.outputs += arguments[2].numel() if kernel.name == "forward" else 0
        recorder.launches.append(Recorded(launch, repr(kernel), "", build.cubin(kernel, f"sm_{arch}")))

    pretend_driver(arch)
    halo: Any = {"launch": record_halo, "runs_here": lambda device: True}
    with (
        patch.object(JITFunction, "run", record), patch.object(gpu, "has_triton", lambda device: True),
        patch.multiple(conv, **halo), patch.multiple(backward, **halo),
    ):  # fmt: skip
        yield recorder


def training_step(
    model: str, width: float, members: int, batch: int, image: int, precision: str, engine: str
) -> Callable[[], None]:
    """A step of the engine as a GPU runs it, on tensors without values."""
    from fastwi.config.schema import Config, EngineConfig, OptimizerConfig
    from fastwi.data.resident import ResidentDataset
    from fastwi.engine.halo import HaloEngine
    from fastwi.engine.program import Program
    from fastwi.engine.stacked import StackedEngine
    from fastwi.models.registry import build_model
    from fastwi.population import Layout

    kind: Any = {"stacked": StackedEngine, "halo": HaloEngine}[engine]

    class Pretended(kind):  # type: ignore[misc]
        def _must_be_exact(self) -> bool:
            return False

    network, meta = build_model(model, 10, width), torch.device("meta")
    own = EngineConfig(device="cpu", precision=precision, backend="eager")
    config = Config(engine=own, optimizer=OptimizerConfig(batch_size=batch))
    made = Pretended(network, config)
    images = torch.zeros(4 * batch, image, image, 3, dtype=torch.uint8, device=meta)
    labels = torch.zeros(4 * batch, dtype=torch.int64, device=meta)
    dataset = ResidentDataset(images, labels, torch.zeros(3, 256, device=meta), 10)
    layout = Layout.of(network)
    program = Program(layout, members, dataset, made.dtype, config, made._make_gradients, made._counted)
    return functools.partial(program._run, batch)


def apart(members: int, batch: int, parameters: int = 271_098) -> None:
    """Launch what such a step lacks: fused prologues, 128 channels, interpolation, weighted sums, options."""
    import numpy as np

    from fastwi.config.schema import OptimizerConfig
    from fastwi.kernels.augment import augment_many
    from fastwi.kernels.combine import Terms, combine_rows_
    from fastwi.kernels.interpolate import RowInterpolation
    from fastwi.kernels.sgd import sgd_
    from fastwi.kernels.stacked import Norm, stacked_conv

    meta = torch.device("meta")

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=meta)

    def layer(before: int, after: int, stride: int, normed: bool) -> None:
        """Forward and backward, on images as large as a ResNet of such widths has them."""
        size = 512 // before
        x = empty(members, batch, size, size, before).requires_grad_()
        weight = empty(members, after, 3, 3, before).requires_grad_()
        scale, shift, mean, var = (empty(members, before, dtype=torch.float32) for _ in range(4))
        norm = Norm(scale, shift, mean, var) if normed else None
        y, _ = stacked_conv(x, weight, stride, 1, norm, None, True)
        torch.autograd.grad([y], [x, weight], [torch.empty_like(y)])

    layer(128, 128, 1, False)
    layer(64, 128, 2, False)
    with patch.dict(os.environ, FASTWI_PROLOGUE="fused"):
        for channels in (16, 32, 64, 128):
            layer(channels, channels, 1, True)
    P = parameters // 4 * 4
    for dtype in (torch.float32, torch.bfloat16):
        RowInterpolation(torch.zeros(2, -(-P // 8) * 8, dtype=dtype)[:, :P], [0], [1], 0.3)()  # addresses count
    x = torch.zeros(3, P)
    combine_rows_(x[:1], [x], Terms.of([2], np.array([[0, 1], [0, 2]]), [[0.5, 0.5]]))
    weights, gradient, momentum = (empty(members, P, dtype=torch.float32) for _ in range(3))
    rate, skip = empty(members, dtype=torch.float32), empty(members, dtype=torch.uint8)
    sgd_(weights, gradient, momentum, rate, OptimizerConfig(nesterov=True), empty(members, P), skip)
    sgd_(weights, gradient, momentum, rate, OptimizerConfig(momentum=0.0, nesterov=False))
    images, order = empty(batch, 32, 32, 3, dtype=torch.uint8), empty(members, batch, dtype=torch.int64)
    augment_many(images, order, None, None, empty(3, 256), 0, None, batch)


def trace(
    triton: str, arch: int, model: str, width: float, members: int, batch: int, image: int, precision: str,
    engine: str = "stacked",
) -> Traced:  # fmt: skip
    """The launches of a step and of `apart` for `arch` by the Triton in directory `triton` ("": installed)."""
    os.environ["TRITON_INTERPRET"] = "0"
    if triton:
        sys.path.insert(0, str(Path(triton).resolve()))
    module = importlib.import_module("triton")
    run = training_step(model, width, members, batch, image, precision, engine)
    with recorded(arch) as step, _Others(step):
        run()
    with recorded(arch) as besides:
        apart(members, batch)
    return Traced(module.__version__, str(Path(str(module.__file__)).parent), step, besides)


def _launch(function: Any, named: Mapping[str, Any], ctas: int, warps: int, shared: int) -> Launch:
    """The facts of a launch of one of fastwi's kernels, from its arguments by name."""
    module, kernel = function.__module__.rpartition(".")[2], function.__name__.removesuffix("_kernel")
    sizes = {key: value for key, value in named.items() if isinstance(value, int)}
    moved = sum(_bytes(value) * (2 if key in IN_PLACE else 1) for key, value in named.items())
    trips, macs = 1.0, 0
    if "KH" in sizes:
        K, O, R = (sizes[key] for key in ("BLOCK_K", "CO", "BLOCK_R"))  # noqa: E741
        taps, columns = sizes["KH"] * sizes["KW"], sizes.get("BLOCK_O") or sizes["BLOCK_I"]
        depth = taps * (O if kernel == "input_gradient" else sizes["CI"])
        trips = -(-depth / sizes["STRIDE"] ** 2 // K) if kernel == "input_gradient" else -(-depth // K)
        if kernel == "weight_gradient":
            trips = -(-min(sizes["CHUNK"], sizes["R"]) // R)
        macs = R * columns * K
    elif "BLOCK_T" in sizes:
        trips = -(-sizes["T"] // sizes["BLOCK_T"])
    elif kernel == "augment":
        out = named["out_MNHWC"]
        moved = _bytes(out) + out.numel()  # of the images only those that are drawn
    elif kernel == "interpolate":
        moved = 3 * sizes["L"] * sizes["P"] * (4 if "32" in str(named["ELEMENT"]) else 2)
    elif kernel == "combine":
        trips, moved = sizes["T"] / sizes["L"], 4 * sizes["P"] * (sizes["T"] + sizes["L"])
    return Launch(_name(module, kernel, named, sizes), ctas, warps, shared, moved, trips, macs)


def _halo_launch(kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> Launch:
    """The facts of a launch of a halo kernel."""
    from fastwi.kernels.halo import backward, conv

    size, ctas = dict(kernel.constants), math.prod(grid)
    tensors = {id(each): each for each in arguments if isinstance(each, torch.Tensor)}
    moved, channels, warps = sum(map(_bytes, tensors.values())), size["C"], kernel.threads // 32
    if kernel.name == "forward":
        x, tiles = arguments[0], conv.tiles_of(kernel, arguments[-1])
        parts = zip((" norm", " residual", " stored"), (arguments[3], *arguments[5:7]), strict=True)
        name = f"halo forward {channels}" + "".join(part for part, given in parts if given is not None)
        macs = x[0].numel() // tiles * channels * 9
        return Launch(name, ctas, warps, kernel.shared_bytes, moved, tiles / grid[0], macs)
    norms = (" from its norm" if arguments[1] is not None else "", " norm" if arguments[6] is not None else "")
    name = f"halo backward {channels}{''.join(norms)}{' residual' if arguments[10] is not None else ''}"
    macs = backward._PLACES * channels * size["SLICE"] * 9 * 2
    trips = HALO_BACKWARD_TRIPS[channels]
    return Launch(name, ctas, warps, kernel.shared_bytes, moved, size["TILES"], macs, trips)


def _name(module: str, kernel: str, named: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Such as "conv forward 16-32/2 norm": kernel, channels, stride, and which optional tensors there are."""
    parts = [module.removeprefix("stacked_"), kernel.replace("_", " ")]
    if parts[0] == parts[1]:
        del parts[0]
    if "KH" in sizes:
        stride = f"/{sizes['STRIDE']}" if sizes["STRIDE"] > 1 else ""
        parts.append(f"{sizes['CI']}-{sizes['CO']}{stride}")
    elif "C" in sizes and kernel != "augment":
        parts.append(str(sizes["C"]))
    elif "E" in sizes:
        parts.append(f"of {sizes['E']:,}")
    elif kernel == "interpolate":
        parts.append(str(named["ELEMENT"]))
    optional = {"stats_M4I": "norm", "residual_MRC": "residual", "dz2_MRC": "2 users", "z_MRC": "z", "g_MRC": "g"}
    if kernel != "input_gradient" or "KH" in sizes:
        parts += [
            word for key, word in optional.items()
            if named.get(key) is not None and (word not in "zg" or kernel == "gradient_sums")
        ]  # fmt: skip
    return " ".join(parts)


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [tensor for each in tree for tensor in _tensors(each)] if isinstance(tree, (list, tuple)) else []


def _bytes(value: Any) -> int:
    """Bytes of a tensor, an expanded one's as they are stored; 0 of anything else."""
    if not isinstance(value, torch.Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
