"""Carries out what is planned, a run as a sweep: on the store and with the executor that its options name."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from fastwi.config.schema import Config
from fastwi.data.split import free_host_bytes
from fastwi.errors import UserError
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.scheduler import Done, Executor, Listener, LocalExecutor, carry_out, limits_of
from fastwi.experiment.store import Store
from fastwi.experiment.store.precision import note_precision
from fastwi.experiment.worker import Worker


def worker_of(planned: PlannedSweep) -> Worker:
    """A worker on this device that refuses all datasets and networks but those that were planned on."""
    options = planned.spec.options
    worker = Worker(Path(options.store), Path.cwd(), options.memory_GiB * 2**30 / 2)
    worker.resources.expect(planned.tree.contents)
    return worker


def check_memory(config: Config, worker: Worker) -> None:
    """Raise UserError where a run's networks do not fit into the memory that is free.

    At the interpolation there are the average and its children, and a copy of them with recomputed statistics.
    """
    resources = worker.resources
    device, networks = resources.engine(config).device, config.experiment.children
    needed = 2 * (1 + networks) * resources.state_bytes(config)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    if needed > free:
        raise UserError(
            f"experiment.children: {networks:,} networks of {resources.layout(config).P:,} parameters need "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; give fewer, or a smaller model.width"
        )


@contextmanager
def open_store(planned: PlannedSweep) -> Iterator[Store]:
    """The sweep's store, made where it is not there; its metrics.parquet is written at the end.

    Raises UserError where it cannot be written.
    """
    with Store.open(planned.spec.options.store) as store:
        if planned.auto:
            note_precision(store.directory, planned.auto)
        try:
            yield store
        finally:
            store.export()


def carry_out_planned(planned: PlannedSweep, worker: Worker, store: Store, listener: Listener) -> Done:
    """Do all that the store lacks. `worker` does it, unless the options name another executor."""
    options, resources, config = planned.spec.options, worker.resources, planned.points[0].config
    limits = limits_of(options, resources.state_bytes(config), resources.engine(config).members_at_once)
    with ExitStack() as stack:
        executor: Executor = LocalExecutor(worker)
        if options.executor == "ray":
            from fastwi.experiment.distributed import RayExecutor

            memory_bytes = options.memory_GiB * 2**30 / 2
            executor = RayExecutor(Path(options.store), options.workers, options.gpus_per_worker, memory_bytes)
            stack.callback(executor.close)
        return carry_out(planned.tree, store, executor, listener, limits)
