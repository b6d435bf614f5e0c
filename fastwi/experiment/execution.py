"""Carries out what is planned, a run as a sweep: on the store and with the executor that its options name."""

import gc
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing

import torch

from fastwi.config.schema import Config
from fastwi.data.split import free_host_bytes
from fastwi.engine.device import resolve_device
from fastwi.errors import UserError
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.scheduler import Executor, Listener, carry_out, limits_of
from fastwi.experiment.store import Store
from fastwi.experiment.store.precision import note_precision
from fastwi.experiment.store.repair import export
from fastwi.experiment.todo import left_of
from fastwi.experiment.worker import Worker


def worker_for(planned: PlannedSweep) -> Worker:
    """A worker on this device. If it will do what is left, that is tried: memory, images, a step of own networks.

    Raises UserError where that fails.
    """
    options, tree = planned.spec.options, planned.tree
    worker = Worker(tree, options)
    if options.executor == "local":
        left = left_of(planned)
        averages = (tree.averages.get(tree.start_of(task)) for task in left)
        widest = max((len(average.nodes) for average in averages if average), default=0)
        for config in _unlike(map(tree.config_of, left)):
            _check_memory(config, widest, worker.resources)
        for config in _unlike(tree.configs[task] for task in left if task < len(tree)):
            worker.resources.tried_engine(config)
    return worker


def _unlike(configs: Iterable[Config]) -> Iterable[Config]:
    """One for each network, with or without a moving average, engine, batch size and dataset."""
    kinds = ((c, (c.model, c.optimizer.ema_decay > 0, c.engine, c.optimizer.batch_size, c.data)) for c in configs)
    return {kind: config for config, kind in kinds}.values()


def _check_memory(config: Config, widest: int, resources: Resources) -> None:
    """UserError where there is no room for an average and all that it is made of, `widest` networks at most.

    Beside these there is a copy of the average with recomputed statistics; at the interpolation, of children too.
    """
    device, experiment = resolve_device(config.engine.device), config.experiment
    networks = max(2 * (1 + experiment.children), 2 + widest)
    needed = networks * resources.layout(config).row_bytes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    if needed > free:
        key, fix = "experiment.children", "average fewer (of a sweep: sweep.tuple_size), in fewer experiment.rounds,"
        if widest > experiment.children * experiment.rounds + 1:
            key, fix = "trajectory.averages", "give lawa alone, or for swa a later trajectory.begin,"
        raise UserError(
            f"{key}: {max(experiment.children, widest):,} networks of {resources.layout(config).P:,} parameters need "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; {fix} or a smaller model.width"
        )


def carry_out_planned(planned: PlannedSweep, worker: Worker, store: Store, listener: Listener) -> list[str]:
    """Do all that the store lacks, by `worker` or the executor of the options, and export what is measured.

    Returns what could not be done, a line for each reason. Raises UserError where the store cannot be written, or was
    begun in another precision.
    """
    options, resources, config = planned.spec.options, worker.resources, planned.points[0].config
    if planned.auto:
        note_precision(store.directory, planned.auto)
    engine = resources.engine(config)
    largest = max(resources.layout(each).row_bytes for each in _unlike(point.config for point in planned.points))
    limits = limits_of(options, largest, engine.members_at_once)
    with ExitStack() as stack:
        stack.callback(export, store)
        gc.freeze()  # else every full collection walks the whole tree
        stack.callback(gc.unfreeze)
        executor = Executor(worker)
        if options.executor == "ray":
            from fastwi.experiment.distributed import RayExecutor

            executor = stack.enter_context(closing(RayExecutor(planned.tree, options)))
        reasons = Counter(carry_out(store, executor, listener, limits).values())
    return [f"{count:,} tasks not done: {reason}" for reason, count in sorted(reasons.items())]
