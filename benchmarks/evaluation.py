"""The line between two ResNet20s, fastwi beside plain compiled evaluation.

autocast-static  the network in channels-last order, torch.compile'd under bf16 autocast, with the allocator settings
                 that fastwi makes on a CPU; state dicts interpolated and loaded one alpha after the other
fastwi           `fastwi.analysis.evaluate_line` by the default engine; again is the same once more
graph ...        the same by other engines

Where the device does not compute in bf16 (`engine.precision: auto`) all compute in float32. All evaluate the same
networks, batch-norm statistics averaged too, on the same resident images of both splits, in the same batches, and sum
the loss and count the errors of each split and alpha. Before anything is timed, all are held to each other.

The time of a line is proportional to alphas and images. With --pieces P a round is every P-th place of the line, and
P rounds are the whole line once: every case does the full work, in turns short enough that what disturbs the machine
disturbs them all. For the full size in some 10 minutes: --pieces 10 --baselines fastwi,autocast-static
"""

import copy
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.floor import floors_of
from benchmarks.runner import AGAIN, Case, Report, benchmark
from benchmarks.task import Task, fastwi_case, load, make_task
from fastwi.analysis import Evaluator, evaluate_line
from fastwi.data.resident import ResidentDataset
from fastwi.engine.choose import ENGINES
from fastwi.errors import UserError
from fastwi.kernels.augment import augment_reference
from fastwi.population import Population

FASTWI, STOCK = "fastwi", "autocast-static"
OURS = {FASTWI: "auto", AGAIN: "auto"} | {name: name for name in list(ENGINES)[1:]}
SHOWN = {name: FASTWI if name == FASTWI else f"{FASTWI}, {name}" for name in OURS}
SHOWN[STOCK] = "stock, autocast + static memory"

Splits = Mapping[str, ResidentDataset]
Line = Callable[[Sequence[float]], np.ndarray]  # alphas -> losses (nats) and errors (%), float64 [L, splits, 2]


@benchmark
def main(
    report: Report, data: str = "data/cifar10", device: str = "auto", alphas: int = 30, images: int = 10_000,
    batch: int = 500, rounds: int = 5, pieces: int = 1, baselines: tuple[str, ...] = tuple(SHOWN),
) -> None:  # fmt: skip
    """One table."""
    if alphas < 2 or alphas % pieces:
        raise UserError(f"--alphas {alphas}: must be at least 2, and divisible by --pieces {pieces}")
    task = make_task(data, max(1, min(images, 2_560) // 128), device=str(report.device))
    train, pair = fastwi_case(task, 2, "auto")
    train.run()  # a few steps: weights and statistics of real siblings
    splits = {name: load(data, name, task.device, images)[0] for name in ("train", "test")}
    places = np.linspace(0, 1, alphas).tolist()
    work = alphas // pieces * sum(map(len, splits.values()))

    def build(name: str) -> Case:
        stock = name == STOCK
        line = _stock(task, pair, splits, batch) if stock else _fastwi(task, pair, splits, batch, OURS[name])
        numbers = itertools.count()
        return Case(lambda: line(places[next(numbers) % pieces :: pieces]), work, static_memory=True)

    cases = {shown: functools.partial(build, name) for name, shown in SHOWN.items() if name in baselines}
    each, floors = floors_of(task, batch, training=False)
    counts = " + ".join(f"{len(split):,} {name}" for name, split in splits.items())
    part = f", {alphas // pieces} a round," if pieces > 1 else ""
    report.time(
        f"{alphas} alphas{part} x ({counts}) images, batch {batch}, {task.dtype}", "images", cases,
        pieces if pieces > 1 else rounds, reference=[FASTWI], each=each, floors=floors,
        check=functools.partial(verify, task.dtype, 100 / images), sums=pieces > 1,
    )  # fmt: skip


def _stock(task: Task, pair: Population, splits: Splits, batch: int) -> Line:
    """What a careful script does."""
    network = copy.deepcopy(task.network()).eval().to(task.device).to(memory_format=torch.channels_last)
    a, b = (pair.state_dict(m) for m in (0, 1))
    table = task.dataset.table_C256.to(task.dtype)

    def scores_of(images_NHWC: Tensor, labels_N: Tensor, order_N: Tensor) -> Tensor:
        x_NCHW = augment_reference(images_NHWC, order_N, None, None, table, 0)
        with task.autocast():
            logits_NK = network(x_NCHW).float()
        labels_N = labels_N[order_N]
        loss = functional.cross_entropy(logits_NK, labels_N, reduction="sum")
        return torch.stack([loss, (logits_NK.argmax(1) != labels_N).sum().float()])

    step = task.compiled(scores_of)

    @torch.no_grad()
    def line(alphas: Sequence[float]) -> np.ndarray:
        measured = []
        for alpha in alphas:
            state = {key: a[key].lerp(b[key], alpha) if a[key].is_floating_point() else a[key] for key in a}
            network.load_state_dict(state)
            for split in splits.values():
                total = torch.zeros(2, dtype=torch.float64, device=task.device)
                for order_N in torch.arange(len(split), device=task.device).split(batch):
                    total += step(split.images_NHWC, split.labels_N, order_N)
                measured.append(total / len(split))
        return torch.stack(measured).view(len(alphas), len(splits), 2).cpu().numpy() * (1, 100)

    return line


def _fastwi(task: Task, pair: Population, splits: Splits, batch: int, engine: str) -> Line:
    """fastwi's evaluation of the line."""
    kind = dataclasses.replace(task.config.engine, name=engine, evaluation_batch=batch)
    evaluator = Evaluator(task.network(), kind, task.batch)

    def line(alphas: Sequence[float]) -> np.ndarray:
        found = evaluate_line(evaluator, pair, splits, alphas, treatments=("averaged",))
        tables = (found.loss, found.error)
        return np.stack([[table[split]["averaged"] for split in splits] for table in tables]).transpose(2, 1, 0)

    return line


def verify(dtype: torch.dtype, image: float, found: Mapping[str, np.ndarray]) -> None:
    """UserError where losses or errors differ from the stock ones by more than rounding. `image`: of one, in %."""
    # bf16 has 8 bits: a logit may be off by some per cent, and an image near a boundary falls on either side.
    nats, percent = (0.02, 1.5) if dtype == torch.bfloat16 else (1e-4, 0.5)
    if SHOWN[STOCK] not in found:
        print("fastwi was not compared with a stock evaluation: --baselines leaves it out")
        return
    for name, scores in found.items():
        loss_off, error_off = np.abs(scores - found[SHOWN[STOCK]]).max(axis=(0, 1))
        if not (loss_off <= nats and error_off <= percent + image):
            off = f"{loss_off:.2g} nats and {error_off:.2g} %"
            raise UserError(f"{name} differs from {SHOWN[STOCK]} by {off}; nothing was measured")


if __name__ == "__main__":
    sys.exit(main())
