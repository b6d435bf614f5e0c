"""`python -m fastwi.sweep --config FILE`: a grid as one tree of trajectories, every shared epoch trained once.

A sweep reads from top to bottom in `open_sweep` and `carry_out_sweep`. The same command goes on with a sweep that was
interrupted, and may run in several processes at once. From Python this module is called: `fastwi.sweep(config, ...)`
is `fastwi.python.entry.sweep`.
"""

import inspect
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from fastwi.cli import run_command
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepfile import SweepRequest, read_sweep_request, sweep_name
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.points import points, shard_of
from fastwi.experiment.todo import left_of
from fastwi.files import to_json
from fastwi.models.names import is_own
from fastwi.python import entry
from fastwi.report.progress import clock, cost_of

if TYPE_CHECKING:
    from fastwi.experiment.worker import Worker
    from fastwi.report.sweep_files import SweepResults

EXIT_PARTLY = 3


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input, 3 partly done, 130 interrupted."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    request = read_sweep_request(argv)
    if request.print_config:
        print(sweep_to_yaml(request.spec), end="")
        return 0
    sweep = open_sweep(request.spec, sweep_name(request), request.shard)
    if request.dry_run:
        from fastwi.report.sweep_plan import sweep_plan

        plan = sweep_plan(sweep.planned, sweep.worker.resources)
        print(to_json(plan.values) if request.json else "\n".join(plan.lines))
        return 0
    return _show(request, sweep, carry_out_sweep(sweep))


@dataclass(frozen=True)
class Sweep:
    """A sweep that may begin or go on: all of it, the part that is to be done now, and who does it."""

    planned: PlannedSweep
    part: PlannedSweep
    worker: "Worker"


def open_sweep(spec: SweepSpec, name: str, shard: tuple[int, int] | None = None) -> Sweep:
    """Plan the sweep called `name`, of which `shard` (i, n) is to be done: part i of n. Nothing is written.

    Raises UserError where it cannot be done.
    """
    # torch takes seconds to import: bad sweep files are refused before.
    from fastwi.experiment.execution import worker_of

    spec = replace(spec, options=replace(spec.options, name=name))
    every = list(points(spec))
    planned = plan_sweep(spec, every)
    part = planned if shard is None else plan_sweep(spec, shard_of(every, *shard))
    return Sweep(planned, part, worker_of(planned))


def carry_out_sweep(sweep: Sweep, quiet: bool = False) -> "SweepResults":
    """Do what is left of the sweep's part, and write what is measured. `quiet`: no progress is shown.

    Raises UserError where a network of the user's own fails, or a file cannot be written.
    """
    from fastwi.experiment.execution import carry_out_planned, open_store
    from fastwi.report.progress import TreeProgress
    from fastwi.report.sweep_files import write_sweep
    from fastwi.report.sweep_plan import auto_line

    planned, part, worker = sweep.planned, sweep.part, sweep.worker
    if planned.spec.options.executor == "local":  # other executors' workers try them, on the devices that they have
        _try_networks(part, worker)
    with open_store(planned) as store, TreeProgress(partial(cost_of, part), quiet=quiet) as progress:
        if planned.auto:
            progress.told(auto_line(planned.auto))
        begun = time.monotonic()
        done = carry_out_planned(part, worker, store, progress)
        progress.told(f"trained {done.trained} epochs, measured {done.probed} networks in "
                      f"{clock(time.monotonic() - begun)}")  # fmt: skip
        return write_sweep(planned, store, worker.resources, sorted(done.diverged.values()) + done.failures())


def _try_networks(planned: PlannedSweep, worker: "Worker") -> None:
    """Try the user's own networks that are about to be trained. Raises ConfigError where one fails."""
    configs = (planned.tree.configs[node] for node in left_of(planned).epochs)
    kinds = {(c.model, c.engine, c.optimizer.batch_size, c.data): c for c in configs if is_own(c.model.name)}
    for config in kinds.values():
        worker.resources.tried_engine(config)


def _show(request: SweepRequest, sweep: Sweep, found: "SweepResults") -> int:
    from rich.console import Console

    from fastwi.report.summary import rich_table
    from fastwi.report.sweep import cell_table

    if request.json:
        print(to_json({"directory": str(found.directory), "points": len(sweep.planned.points),
                       "measurements": found.measured, "missing": found.missing}))  # fmt: skip
    else:
        if found.cells:
            Console().print(rich_table(cell_table(found.cells)))
        print(f"{found.directory}: results.parquet, gains.parquet, summary.md, heatmap.png, curves.png"
              + (f"; {found.missing:,} measurements are not there yet" if found.missing else ""))  # fmt: skip
    for line in found.problems:
        print(f"fastwi: {line}", file=sys.stderr)
    return EXIT_PARTLY if found.problems or (found.missing and request.shard is None) else 0


class _Callable(ModuleType):
    """A module that can be called: whoever imports `fastwi.sweep` binds that name to the module."""

    __call__ = staticmethod(entry.sweep)


sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(entry.sweep)  # what help and notebooks show of the call

if __name__ == "__main__":
    sys.exit(main())
