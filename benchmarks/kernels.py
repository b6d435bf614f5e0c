"""Triton kernels compiled for GPUs that need not be there, and the roofline of the `stacked` engine, or of `halo`.

For the installed Triton and each directory in --triton (made by pip install --target DIR; several with commas), and
for each compute capability of --gpus: registers, spills, shared memory, CTAs an SM, loads and stores (instructions
that move 16/8/4/2/1 bytes a thread), matrix instructions.

For each of --gpus: what limits each launch (see benchmarks/kernels_model.py), and the images/s of a training step
that runs at these limits. It is a bound from above, not an estimate: nothing runs on a GPU here.
"""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import kernels_traced
from benchmarks.kernels_model import (
    GPUS,
    NODE_S,
    Code,
    Gpu,
    find_cuobjdump,
    limits,
    read_cubin,
    row,
)
from benchmarks.output import Points
from benchmarks.runner import Report, benchmark, fresh
from fastwi.errors import UserError


@benchmark
def main(
    report: Report, triton: str = "", gpus: tuple[str, ...] = tuple(GPUS), members: tuple[int, ...] = (1, 64),
    model: str = "resnet20", width: float = 1.0, batch: int = 128, image: int = 32, precision: str = "bf16",
    engine: str = "stacked",
) -> None:  # fmt: skip
    """A table of kernels for each Triton and capability, one of limits for each GPU, then the engine's bounds."""
    directories = [Path(text).resolve() for text in filter(None, triton.split(","))]
    for directory in directories:
        if not (directory / "triton").is_dir():
            raise UserError(
                f"--triton {directory}: holds no Triton; make it by pip install --target DIR triton==VERSION"
            )
    archs = sorted({GPUS[name].arch for name in gpus})
    bounds: list[dict[str, Any]] = []
    points: Points = {}
    for place in ("", *map(str, directories)):
        for arch in archs:
            traced = {
                count: fresh(
                    kernels_traced.trace, triton=place, arch=arch, model=model, width=width, members=count,
                    batch=batch, image=image, precision=precision, engine=engine,
                ) for count in members
            }  # fmt: skip
            most = traced[members[-1]]
            version, tool = f"Triton {most.triton}", find_cuobjdump(most.directory)
            every = [each for found in traced.values() for each in found.step.launches + found.apart.launches]
            cubins = {each.kernel: each.cubin for each in every}
            codes = {kernel: read_cubin(cubin, tool) for kernel, cubin in cubins.items()}
            launches = {each.kernel: each.launch for each in reversed(most.step.launches + most.apart.launches)}
            rows = [row(launches[kernel], codes[kernel], arch) for kernel in reversed(launches)]
            measurements = [{"triton": version, "arch": str(arch), **each} for each in rows]
            report.add(f"{version}, sm_{arch}: compiled kernels", rows, measurements)
            for name, count in itertools.product(gpus, members):
                if GPUS[name].arch != arch:
                    continue
                at = {"triton": version, "gpu": name, "members": count}
                step = traced[count].step
                rows, seconds, moved = _limits(step, codes, GPUS[name], count)
                title = f"{version}, {name}, {count} members: us a member at least of a launch, and of all such"
                report.add(title, rows, [at | each for each in rows])
                images = count * batch
                bounds.append(at | {
                    "nodes": len(step.launches) + len(step.others), "bytes_an_output": moved / step.outputs,
                    "memory_images_per_s": images / (moved / GPUS[name].bytes_per_s),
                    "all_limits_images_per_s": images / seconds,
                })  # fmt: skip
                points.setdefault(f"{name}, {version}", {})[count] = [images / seconds] * 3
    title = f"{engine}, {model}, batch {batch}, {precision}: images/s at most; not measured"
    report.add(title, bounds, points=points, unit="images/s at most")


def _limits(
    step: kernels_traced.Recorder, codes: Mapping[str, Code], gpu: Gpu, members: int
) -> tuple[list[dict[str, Any]], float, float]:
    """Rows by name, and the least seconds and the bytes of a step of so many members."""
    rows: dict[str, dict[str, Any]] = {}
    seconds = total = 0.0

    def add(name: str, moved: float, ctas: int | None, by: Mapping[str, float | None], least: float) -> None:
        nonlocal seconds, total
        micro = {limit: None if value is None else 1e6 * value / members for limit, value in by.items()}
        each = rows.setdefault(name, {"kernel": name, "a_step": 0, "CTAs": ctas, **micro, "all": 0.0})
        each["a_step"] += 1
        each["all"] += 1e6 * least / members
        seconds, total = seconds + least, total + moved

    for each in step.launches:
        launch, by = each.launch, limits(each.launch, codes[each.kernel], gpu)
        add(launch.name, launch.moved, launch.ctas, by, max(*by.values(), NODE_S))
    for name, moved in step.others:
        memory = moved / gpu.bytes_per_s
        by_torch = dict.fromkeys(("issue", "shared", "tensor")) | {"memory": memory}
        add(f"torch {name}", moved, None, by_torch, max(memory, NODE_S))
    return list(rows.values()), seconds, total


if __name__ == "__main__":
    sys.exit(main())
