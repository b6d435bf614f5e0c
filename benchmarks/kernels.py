"""Triton kernels compiled for GPUs that need not be there, and the roofline of the `stacked` engine, or of `halo`.

For the installed Triton and each directory in --triton (made by pip install --target DIR; several with commas), and
for each compute capability of --gpus: registers, spills, shared memory, CTAs an SM, loads and stores (instructions
that move 16/8/4/2/1 bytes a thread), matrix instructions.

For each of --gpus: what limits each launch (see benchmarks/kernels_model.py), and the images/s of a training step
that runs at these limits. It is a bound from above, not an estimate: nothing runs on a GPU here.
"""

import base64
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
    Launch,
    find_cuobjdump,
    limits,
    read_cubin,
    row,
)
from benchmarks.output import Points
from benchmarks.runner import Report, benchmark, fresh
from fastwi.errors import UserError

_TRACED = 2  # members of the traced step of several; launches have CTAs and bytes in proportion to members


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
        steps = {
            traced_members: fresh(
                kernels_traced.trace, triton=place, archs=archs, model=model, width=width,
                members=traced_members, batch=batch, image=image, precision=precision, engine=engine,
            ) for traced_members in sorted({min(count, _TRACED) for count in members})
        }  # fmt: skip
        traced = steps[max(steps)]
        version, tool = f"Triton {traced['triton']}", find_cuobjdump(traced["directory"])
        cubins = {key: text for each in steps.values() for key, text in each["cubins"].items()}
        codes = {key: read_cubin(base64.b64decode(text), tool) for key, text in cubins.items()}
        for arch, found in traced["archs"].items():
            launches = {key: Launch(**launch) for launch, key in reversed(found["step"] + found["apart"])}
            rows = [row(launches[key], codes[key], int(arch)) for key in reversed(launches)]
            measurements = [{"triton": version, "arch": arch, **each} for each in rows]
            report.add(f"{version}, sm_{arch}: compiled kernels", rows, measurements)
            for name, count in itertools.product(gpus, members):
                if GPUS[name].arch != int(arch):
                    continue
                at = {"triton": version, "gpu": name, "members": count}
                step = steps[min(count, _TRACED)]["archs"][arch]
                factor = count / min(count, _TRACED)
                rows, seconds, moved = _limits(step, codes, GPUS[name], count, factor)
                title = f"{version}, {name}, {count} members: us a member at least of a launch, and of all such"
                report.add(title, rows, [at | each for each in rows])
                images, outputs = count * batch, step["outputs"] * factor
                bounds.append(at | {
                    "nodes": len(step["step"]) + len(step["others"]), "bytes_an_output": moved / outputs,
                    "memory_images_per_s": images / (moved / GPUS[name].bytes_per_s),
                    "all_limits_images_per_s": images / seconds,
                })  # fmt: skip
                points.setdefault(f"{name}, {version}", {})[count] = [images / seconds] * 3
    title = f"{engine}, {model}, batch {batch}, {precision}: images/s at most; not measured"
    report.add(title, bounds, points=points, unit="images/s at most")


def _limits(
    found: Mapping[str, Any], codes: Mapping[str, Code], gpu: Gpu, members: int, scale: float
) -> tuple[list[dict[str, Any]], float, float]:
    """Rows by name, and the least seconds and the bytes of a step of so many members: `scale` times those traced."""
    rows: dict[str, dict[str, Any]] = {}
    seconds = total = 0.0

    def add(name: str, moved: float, ctas: int | None, by: Mapping[str, float | None], least: float) -> None:
        nonlocal seconds, total
        micro = {limit: None if value is None else 1e6 * value / members for limit, value in by.items()}
        each = rows.setdefault(name, {"kernel": name, "a_step": 0, "CTAs": ctas, **micro, "all": 0.0})
        each["a_step"] += 1
        each["all"] += 1e6 * least / members
        seconds, total = seconds + least, total + moved

    for facts, key in found["step"]:
        launch = Launch(**facts).scaled(scale)
        by = limits(launch, codes[key], gpu)
        add(launch.name, launch.moved, launch.ctas, by, max(*by.values(), NODE_S))
    for name, moved in found["others"]:
        memory = moved * scale / gpu.bytes_per_s
        by_torch = dict.fromkeys(("issue", "shared", "tensor")) | {"memory": memory}
        add(f"torch {name}", moved * scale, None, by_torch, max(memory, NODE_S))
    return list(rows.values()), seconds, total


if __name__ == "__main__":
    sys.exit(main())
