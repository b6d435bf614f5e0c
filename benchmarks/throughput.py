"""images/s of training M networks at once, fastwi's engines beside baselines.

usual           DataLoader workers, torchvision transforms, float32, eager
stock           resident data, bf16, channels-last, torch.compile; with glibc's own allocator settings
stock-static    (CPU) the same with the allocator settings that fastwi makes, as baselines of many networks have them
stock-graphs    (GPU) the same with torch.compile's CUDA graphs
ffcv            FFCV's Loader and augmentations in front of the stock step
vmap            torch.func.vmap over functional_call, compiled; vmap-eager: not compiled
grouped         HFTA-style horizontal fusion by grouped convolutions, compiled; grouped-nhwc: in channels-last order
loop ...        fastwi's engines; again is the first of them once more, whose difference is the noise

All train the same network (ResNet20) on the same images with the same batch size, crop, flip and SGD. Those down to
ffcv train one network. M of them in series run at that same rate: stock rows are timed beside every M, the others
beside the first only. A round takes --batches steps of one network, and proportionally fewer of more, but at least
--least. Loaders start inside the timed part, with workers and threads already running. fastwi's engines are built
first, and nothing more once --minutes are over. On a GPU: --members 1,2,4 ... 256 --batches 256 --least 16.
--workers: of the usual script and of FFCV; the default is for 2 cores.

Rates are printed after each round. --kernels 10 adds, for each of fastwi's engines, a table of the 10 kernels that
take most of a step. --data random: images of random pixels.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.floor import floors_of
from benchmarks.kernel_times import of_steps, slowest
from benchmarks.peers import single
from benchmarks.peers.populations import Grouped, Vmap, population
from benchmarks.runner import AGAIN, Case, Report, benchmark
from benchmarks.task import Task, fastwi_case, make_task
from fastwi.engine.choose import ENGINES
from fastwi.engine.device import free_memory
from fastwi.errors import UserError

OURS = {name: f"fastwi {name}" for name in ENGINES}
_SERIAL: dict[str, tuple[str, Callable[[Task, int], Case]]] = {
    "usual": ("usual script", single.usual),
    "stock": ("best stock loop", single.stock),
    "stock-static": ("best stock loop, static memory", partial(single.stock, static_memory=True)),
    "stock-graphs": ("best stock loop, CUDA graphs", partial(single.stock, graphs=True)),
    "ffcv": ("FFCV + stock step", single.ffcv),
}


def _engine(name: str, task: Task, members: int) -> Case:
    return fastwi_case(task, members, name)[0]


CASES: dict[str, tuple[str, Callable[[Task, int], Case]]] = {
    **{name: (shown, partial(_engine, name)) for name, shown in OURS.items()},
    **_SERIAL,
    "vmap": ("vmap, compiled", partial(population, Vmap)),
    "vmap-eager": ("vmap, eager", partial(population, Vmap, compiled=False)),
    "grouped": ("grouped convolutions (HFTA)", partial(population, Grouped)),
    "grouped-nhwc": ("grouped convolutions, channels-last", partial(population, Grouped, channels_last=True)),
}
"""By their names among --baselines: name in tables, builder (task, members)."""


@benchmark
def main(
    report: Report, data: str = "data/cifar10", device: str = "auto", members: tuple[int, ...] = (1, 2, 4),
    baselines: tuple[str, ...] = (*CASES, AGAIN), model: str = "resnet20", width: float = 1.0, batch: int = 128,
    batches: int = 24, least: int = 6, rounds: int = 9, workers: int = 2, minutes: float = 1e9, kernels: int = 0,
) -> None:  # fmt: skip
    """Each M is a table."""
    if report.device.type == "cuda" and (members, batches, least) == ((1, 2, 4), 24, 6):
        members, batches, least = (1, 2, 4, 8, 16, 32, 64, 128, 256), 256, 16
    # Shapes are fixed, and every M is compiled by itself: more versions of one function than torch expects.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch.backends.cudnn.benchmark = True
    task = make_task(data, batches, batch, str(report.device), workers, model, width)
    deadline = time.monotonic() + 60 * minutes

    def build(name: str, short: Task, M: int) -> Case:
        if time.monotonic() > deadline:
            raise UserError("not measured: --minutes were over")
        case = CASES[name][1](task if name in _SERIAL else short, M)
        if name in OURS:
            profiled[CASES[name][0]] = case.run
        return case

    for M in members:
        if time.monotonic() > deadline:
            print(f"M = {M} and more: not measured, --minutes {minutes:g} were over")
            break
        free_memory(task.device)  # of the engines for fewer members
        profiled: dict[str, Callable[..., object]] = {}
        short = task.of_images(torch.arange(batch * min(task.steps, max(least, -(-task.steps // M)))))
        cases = {
            shown: partial(build, name, short, M)
            for name, (shown, _) in CASES.items()
            if name in baselines and (members[0] == M or name not in _SERIAL or name.startswith("stock"))
        }
        each, floors = floors_of(task, batch, training=True)
        again = next((shown for shown in OURS.values() if AGAIN in baselines and shown in cases), "")
        ran = report.time(
            f"Training {model}, batch {batch}; M = {M}, {short.steps} steps a round of each", "images", cases,
            rounds, reference=list(OURS.values()), again=again, each=each, floors=floors, at={"members": M},
            until=deadline,
        )  # fmt: skip
        for shown in [name for name in ran if kernels and name in profiled]:
            title = f"{shown}, M = {M}: kernels of a step"
            with report.attempt(title):
                rows = of_steps(profiled[shown], M * batch, short.steps, task.device)
                found = [{"case": shown, "members": M, **row} for row in rows]
                report.add(title, slowest(rows, kernels), found)


if __name__ == "__main__":
    sys.exit(main())
