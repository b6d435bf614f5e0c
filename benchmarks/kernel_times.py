"""Time by kernel, from torch.profiler: of some steps in the middle of an epoch, or of some calls.

On a GPU these are kernels, copies and fills, inside captured graphs too; on a CPU operators, without those they call.
A profiled run is slower than others: compare kernels with each other, and their sum with an unprofiled step.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.runner import Run

LONGEST = 72
"""Characters of a kernel's name that are kept."""


class Kernel(NamedTuple):
    """A kernel of one name: its seconds and launches in all."""

    name: str
    seconds: float
    launches: int


class _Window:
    """An epoch's report of images done: profiles from `first` images on, until `count` more are done."""

    def __init__(self, device: torch.device, first: int, count: int) -> None:
        self.profiler, self.done, self.seconds = _profiler(device), 0, 0.0
        self._device, self._first, self._count, self._seen = device, first, count, 0
        self._state = "before"
        if first <= 0:
            self._start()

    def __call__(self, images: int) -> None:
        self._seen += images
        if self._state == "within":
            self.done += images
            if self.done >= self._count:
                self.stop()
        elif self._state == "before" and self._seen >= self._first:
            self._start()

    def _start(self) -> None:
        _wait(self._device)
        self.profiler.start()
        self._state, self._begun = "within", time.perf_counter()

    def stop(self) -> None:
        if self._state == "within":
            _wait(self._device)
            self.seconds = time.perf_counter() - self._begun
            self.profiler.stop()
            self._state = "after"


def of_steps(epoch: Callable[..., object], images: int, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """A row a kernel, the slowest first, of some steps of `images` images each of an epoch of `steps` steps.

    `epoch` takes a function that it calls with the number of images done after each step. First row: all together,
    beside the time of a step while profiled.
    """
    window = _Window(device, images if steps > 1 else 0, images * max(1, min(steps - 1, 4 if images < 4096 else 1)))
    epoch(window)
    window.stop()
    counted = window.done / images
    kernels = kernels_of(window.profiler, device)
    total = sum(kernel.seconds for kernel in kernels)
    whole = Kernel(f"all; a profiled step took {1e6 * window.seconds / counted:,.0f} us", total, 0)
    launches = sum(kernel.launches for kernel in kernels)
    return [
        {
            "kernel": kernel.name,
            "us_a_step": 1e6 * kernel.seconds / counted,
            "share_%": 100 * kernel.seconds / total,
            "launches_a_step": (kernel.launches or launches) / counted,
        }
        for kernel in [whole, *kernels]
    ]


def of_calls(runs: Mapping[str, Run], device: torch.device, calls: int = 5) -> dict[str, tuple[float, float, float]]:
    """Of each function: seconds until a call returns (least of `calls`), of its kernels, and kernels a call."""
    measured = {}
    for name, run in runs.items():
        host = []
        for _ in range(calls):
            _wait(device)
            begun = time.perf_counter()
            run()
            host.append(time.perf_counter() - begun)
        _wait(device)
        with _profiler(device) as profiler:
            for _ in range(calls):
                run()
            _wait(device)
        kernels = kernels_of(profiler, device)
        seconds, launches = (sum(each) / calls for each in list(zip(*kernels, strict=True))[1:])
        measured[name] = (min(host), seconds, launches)
    return measured


def _profiler(device: torch.device) -> profile:
    return profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU])


def kernels_of(profiler: profile, device: torch.device) -> list[Kernel]:
    """What was profiled, the slowest first. Raises RuntimeError where nothing was seen."""
    kind, spent = DeviceType.CPU, "self_cpu_time_total"
    if device.type == "cuda":
        kind, spent = DeviceType.CUDA, "self_device_time_total"
    found = [
        Kernel(_short(each.key), 1e-6 * getattr(each, spent), each.count)
        for each in profiler.key_averages()
        if each.device_type == kind and not each.is_user_annotation
    ]  # fmt: skip
    if not found:
        raise RuntimeError("torch.profiler saw no kernel; a GPU needs CUPTI")
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _short(name: str) -> str:
    """A kernel's name without its return type, and no longer than LONGEST."""
    name = name.removeprefix("void ")
    return name if len(name) <= LONGEST else name[: LONGEST - 4] + " ..."


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def slowest(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` rows after that of all, and the rest as one."""
    rest = rows[1 + count :]
    numbers = {key: sum(row[key] for row in rest) for key in rows[0] if key != "kernel"}
    return [*rows[: 1 + count], *([{"kernel": f"{len(rest)} others", **numbers}] if rest else [])]
