"""Carries out what is planned, a run as a sweep: on the store and with the executor that its options name."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
