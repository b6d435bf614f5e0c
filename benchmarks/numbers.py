"""Whether the engines, compiled and captured as training runs them, compute what float64 does.

ResNet20s from one initialisation train on random images, each under its own noise, by every engine with its default
backend and by `loop` uncompiled ("loop, eager"). The reference is float64: the plain network and torch.optim.SGD.
Relative errors in 2-norm, of the worst member:

gradient     momentum after one step
way          of the weights in two epochs of --steps steps, the second on what the first compiled and captured
statistics   batch norm's, after them
losses       the training losses of both epochs
evaluation   the loss of the reference's final networks on the images

An engine fails where an error is over --factor times that of "loop, eager" in the same precision and over LEAST, or
where its members trained to nearly the same weights. A ReLU whose input is within rounding of 0 is open in one engine
and closed in another, which is most of these errors; the rate is low, so that they do not grow from step to step.

--apart 1: all at once, each engine and precision in a process of its own, beside "loop, eager" in the same process.
So a GPU's kernels are compiled on all cores, and an engine whose kernels fault ends no other's measurement.
"""

import copy
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.output import cell
from benchmarks.runner import Report, benchmark, fresh
from fastwi.config.schema import Config, EngineConfig, ModelConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, random_images
from fastwi.engine.choose import build_engine, build_network
from fastwi.engine.device import free_memory
from fastwi.engine.schedule import learning_rate
from fastwi.errors import UserError
from fastwi.kernels.augment import augment_reference
from fastwi.population import Population

EAGER = "loop, eager"
ORDER = ("stacked", "graph", "loop", "halo")
"""Of engines: what is built soonest first, and last that whose fault could end the others' measurements."""
QUANTITIES = ("gradient", "way", "statistics", "losses", "evaluation")
EPOCHS = 2
RATE = 1e-3
FAR = 0.3
LEAST = {
    "bf16": {"gradient": 0.1, "way": 0.1, "statistics": 5e-3, "losses": 3e-3, "evaluation": 3e-3},
    "fp32": {"gradient": 0.02, "way": 0.02, "statistics": 1e-3, "losses": 1e-4, "evaluation": 1e-5},
}
"""Errors that pass in any case; FAR: a gradient's that never does."""
APART = 1e-3
"""Of the length of a member's way: two members under different noise end further from each other."""

Outcome = dict[str, Tensor]
"""By quantity, float64 [M, numbers]."""
Way = tuple[str, str]
"""A precision and an engine."""


@benchmark
def main(
    report: Report, device: str = "auto", members: int = 9, steps: int = 4, batch: int = 128, width: float = 1.0,
    factor: float = 2.0, engines: tuple[str, ...] = ORDER,
    precisions: tuple[str, ...] = tuple(LEAST), apart: int = 0,
) -> None:  # fmt: skip
    """A table for each precision. Nine members: one more than `graph` has branches."""
    if members < 2:
        raise UserError(f"--members {members}: must be at least 2, which are to differ")
    settings = {"device": str(report.device), "members": members, "steps": steps, "batch": batch, "width": width}
    ways = [(precision, engine) for precision in precisions for engine in (EAGER, *engines)]
    found: dict[Way, dict[str, Any]] = {}
    for way, row in rows_of(ways, apart, factor=factor, **settings):
        found[way] = row
        report.failed |= row["verdict"] != "ok"
        print(f"{way[0]}: {', '.join(f'{key} {cell(value)}' for key, value in row.items())}", flush=True)
        report.add("", [], [{"precision": way[0], **row}])
    for precision in precisions:
        rows = [found[way] for way in ways if way[0] == precision]
        report.add(f"Relative errors against float64, {precision}, {members} members", rows, [])


def rows_of(ways: Sequence[Way], apart: int, **settings: Any) -> Iterator[tuple[Way, dict[str, Any]]]:
    """The row of each as it comes. `apart`: of all at once, in processes of their own."""
    if not apart:
        for way in ways:
            yield way, judged(way, **settings)
        return
    with ThreadPoolExecutor(len(ways)) as threads:
        running = {threads.submit(functools.partial(fresh, judged, way=way, **settings)): way for way in ways}
        for done in as_completed(running):
            way, error = running[done], done.exception()  # as of a process that a fault of a kernel has ended
            yield way, {"engine": way[1], "verdict": _line(error)} if error else done.result()


def judged(way: Way, factor: float, **settings: Any) -> dict[str, Any]:
    """The errors of an engine, and what is wrong with them."""
    precision, engine = way
    row, eager = (errors(precision, each, **settings) for each in (engine, EAGER))
    verdict = row.get("verdict") or judge(row, eager, factor, LEAST[precision])
    return {"engine": engine, **row, "verdict": verdict}


@functools.cache
def errors(precision: str, engine: str, **settings: Any) -> dict[str, Any]:
    """The errors of an engine and the seconds that it took; the verdict alone where it failed."""
    name, backend = ("loop", "eager") if engine == EAGER else (engine, "auto")
    kind = EngineConfig(name=name, device=settings["device"], precision=precision, backend=backend)
    try:
        config, network, dataset, noises, exact, trained = reference(**settings)
        free_memory(dataset.labels_N.device)
        begun = time.monotonic()
        found = outcome(dataclasses.replace(config, engine=kind), network, dataset, noises, trained)
        return compare(found, exact) | {"s": time.monotonic() - begun}
    except Exception as error:  # the other engines' numbers are wanted all the same
        return {"verdict": _line(error)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@functools.cache
def reference(
    device: str, members: int, steps: int, batch: int, width: float
) -> tuple[Config, nn.Module, ResidentDataset, Sequence[Noise], Outcome, Population]:
    """What all engines train, and what `exact_outcome` makes of it."""
    dataset = random_images(batch * steps, torch.device(device))
    config = Config(model=ModelConfig(width=width), optimizer=OptimizerConfig(batch, RATE))
    network = build_network(config, dataset.classes)
    noises = [Noise(m) for m in range(members)]
    return config, network, dataset, noises, *exact_outcome(config, network, dataset, noises)


def exact_outcome(
    config: Config, network: nn.Module, dataset: ResidentDataset, noises: Sequence[Noise]
) -> tuple[Outcome, Population]:
    """The reference, and its final networks rounded to float32."""
    device, kind = dataset.labels_N.device, config.optimizer
    start = copy.deepcopy(network).double().to(device)
    every: list[list[Tensor]] = []
    trained = []
    for noise in noises:
        once, member = copy.deepcopy(start), copy.deepcopy(start)
        optimizers = [
            torch.optim.SGD(each.parameters(), kind.learning_rate, kind.momentum, weight_decay=kind.weight_decay)
            for each in (once, member)
        ]
        _train_exactly(once, optimizers[0], config, _first_batch(dataset, config), noise, 0)
        momenta = [optimizers[0].state[value]["momentum_buffer"] for value in once.parameters()]
        losses = [_train_exactly(member, optimizers[1], config, dataset, noise, epoch) for epoch in range(EPOCHS)]
        trained.append(copy.deepcopy(member).float())
        rounded = copy.deepcopy(trained[-1]).double().eval()
        order = torch.arange(len(dataset), device=device)
        with torch.no_grad():
            x_NCHW = augment_reference(dataset.images_NHWC, order, None, None, dataset.table_C256.double(), 0)
            loss = functional.cross_entropy(rounded(x_NCHW), dataset.labels_N)
        way = _flat(member.parameters()) - _flat(start.parameters())
        statistics = _flat(value for value in member.buffers() if value.is_floating_point())
        every.append([_flat(momenta), way, statistics, torch.stack(losses), loss[None]])
    exact = {name: torch.stack(values) for name, values in zip(QUANTITIES, zip(*every, strict=True), strict=True)}
    return exact, Population.from_modules(trained, device)


def _train_exactly(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: Config, dataset: ResidentDataset, noise: Noise,
    epoch: int,
) -> Tensor:  # fmt: skip
    """Train in place through an epoch, in the network's dtype; the mean loss."""
    kind, padding, total = config.optimizer, config.augment.padding, torch.zeros((), device=dataset.labels_N.device)
    draws = noise.draws(epoch, len(dataset), padding, config.augment.flip)
    order, offset, flip = (
        torch.from_numpy(each).to(total.device) for each in (draws.order_N, draws.offset_N2, draws.flip_N)
    )
    steps = len(dataset) // kind.batch_size
    for step in range(steps):
        at = slice(step * kind.batch_size, (step + 1) * kind.batch_size)
        table = dataset.table_C256.double()
        x_NCHW = augment_reference(dataset.images_NHWC, order[at], offset[at], flip[at], table, padding)
        loss = functional.cross_entropy(network.train()(x_NCHW), dataset.labels_N[order[at]])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch * steps + step, steps, kind, config.schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = total + loss.detach()
    return total / steps


def outcome(
    config: Config, network: nn.Module, dataset: ResidentDataset, noises: Sequence[Noise], trained: Population
) -> Outcome:
    """What the engine of `config` makes of the same start; `trained`: the networks that it evaluates."""
    engine = build_engine(config, copy.deepcopy(network))
    start = Population.from_modules([network], trained.device).clone_rows([0] * len(noises))
    once, members = start.clone_rows(range(len(noises))), start.clone_rows(range(len(noises)))
    engine.train_epoch(once, _first_batch(dataset, config), noises, 0)
    losses = [engine.train_epoch(members, dataset, noises, epoch) for epoch in range(EPOCHS)]
    evaluation = engine.evaluate(trained, dataset).loss_M
    every = [
        [
            _flat(once.momentum(m).values()),
            _flat(members.parameters(m).values()) - _flat(start.parameters(m).values()),
            _flat(value for value in members.buffers(m).values() if value.is_floating_point()),
            torch.tensor([each[m] for each in losses], dtype=torch.float64, device=trained.device),
            torch.tensor([evaluation[m]], dtype=torch.float64, device=trained.device),
        ]
        for m in range(len(noises))
    ]
    return {name: torch.stack(values) for name, values in zip(QUANTITIES, zip(*every, strict=True), strict=True)}


def _first_batch(dataset: ResidentDataset, config: Config) -> ResidentDataset:
    return dataset.part(torch.arange(config.optimizer.batch_size))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def compare(found: Outcome, exact: Outcome) -> dict[str, Any]:
    """The relative error of each quantity, of the worst member; and how far apart the two nearest members ended."""
    row: dict[str, Any] = {
        name: float(((found[name] - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) for name, wanted in exact.items()
    }
    way = found["way"]
    row["apart"] = min(float((a - b).norm() / b.norm()) for a, b in itertools.combinations(way, 2))
    return row


def judge(row: Mapping[str, float], eager: Mapping[str, float], factor: float, least: Mapping[str, float]) -> str:
    """What is wrong, or "ok"."""
    if "way" not in eager:
        return "not compared: loop, eager failed"
    wrong = [name for name in QUANTITIES if not row[name] <= max(least[name], factor * eager[name])]
    wrong += ["members are alike"] if not row["apart"] >= APART else []
    wrong += ["loop, eager is far from float64"] if not eager["gradient"] <= FAR else []
    return ", ".join(wrong) or "ok"


if __name__ == "__main__":
    sys.exit(main())
