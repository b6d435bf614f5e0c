"""`python -m fastwi.sweep --config FILE`: a grid as one tree of trajectories, every shared epoch trained once.

A sweep reads from top to bottom in `open_sweep` and `carry_out_sweep`. The same command goes on with a sweep that was
interrupted, and may run in several processes at once. From Python the module itself is called (below).
"""

import inspect
import sys
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from fastwi.cli import EXIT_PARTLY, command
from fastwi.config.read import read_sweep_request
from fastwi.config.sweep import SweepSpec, points, shard_of, unused_keys
from fastwi.config.write import sweep_to_yaml
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.todo import left_of
from fastwi.files import check_writable
from fastwi.python import entry
from fastwi.report.figures import set_style

if TYPE_CHECKING:
    from fastwi.experiment.worker import Worker
    from fastwi.report.results import Results


@partial(command, resumes=True)
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input, 3 partly done, 130 interrupted."""
    request = read_sweep_request(argv)
    set_style(request.flags.figures)
    for line in unused_keys(request.spec):
        print(f"fastwi: {line}", file=sys.stderr)
    with request.naming_config():
        sweep = open_sweep(request.spec, request.sweep, request.flags.part)
    if request.flags.dry_run:
        from fastwi.report.plan import plan
        from fastwi.report.results import sweep_directory

        directory, yaml = sweep_directory(sweep.planned), sweep_to_yaml(sweep.planned.spec, changed=True)
        plan(sweep.part, sweep.worker.resources, directory, yaml).show(request.flags.json)
        return 0
    found = carry_out_sweep(sweep)
    found.summary.show(request.flags.json)
    missing = left_of(sweep.part) if request.flags.shard else found.missing  # of a shard what is its own
    return EXIT_PARTLY if found.summary.problems or missing else 0


class Sweep(NamedTuple):
    """A sweep that may begin or go on: all of it, the part that is to be done now, and who does it."""

    planned: PlannedSweep
    part: PlannedSweep
    worker: "Worker"


def open_sweep(spec: SweepSpec, name: str, shard: tuple[int, int] | None = None) -> Sweep:
    """Plan the sweep `name`; of it only part i of n is done now where `shard` is (i, n). Nothing is written."""
    # torch takes seconds to import: bad sweep files are refused before.
    from fastwi.experiment.execution import worker_for

    spec = replace(spec, options=replace(spec.options, name=name))
    every = list(points(spec))
    planned = plan_sweep(spec, every)
    part = planned if shard is None else plan_sweep(spec, shard_of(every, *shard))
    return Sweep(planned, part, worker_for(part))


def carry_out_sweep(sweep: Sweep, quiet: bool = False) -> "Results":
    """Do what is left of the sweep's part, and write what is measured. `quiet`: no progress. Raises UserError."""
    from fastwi.experiment.execution import carry_out_planned
    from fastwi.experiment.store import Store
    from fastwi.report.plan import engine_text
    from fastwi.report.progress import TreeProgress
    from fastwi.report.results import sweep_directory, write_sweep

    planned, part, worker = sweep
    first = engine_text(worker.resources.engine(planned.points[0].config), planned)
    with Store.open(planned.spec.options.store) as store, TreeProgress(part, first, quiet) as progress:
        check_writable(sweep_directory(planned))  # before anything is trained for it
        failures = carry_out_planned(part, worker, store, progress)
        return write_sweep(planned, store, worker.resources, failures, progress.tasks_done > 0)


# `fastwi.sweep(config, ...)`: whoever imports this module binds that name to it, so it is what is called.
sys.modules[__name__].__class__ = type("_Callable", (ModuleType,), {"__call__": staticmethod(entry.sweep)})
__signature__ = inspect.signature(entry.sweep)  # what help and notebooks show of the call

if __name__ == "__main__":
    sys.exit(main())
