"""`python -m fastwi.train --config FILE`: train a parent, clone it, average the children, train on.

A run is a sweep of one point, with a store of its own in the run's directory; it reads from top to bottom in
`open_run` and `carry_out_run`, which `fastwi.run` calls too. The same command goes on with an interrupted run.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.cli import EXIT_FAILED, run_command
from fastwi.config.read import Request, read_request
from fastwi.config.schema import Config
from fastwi.config.write import config_hash, to_yaml
from fastwi.data.card import Card, read_card
from fastwi.experiment.contents import result_digest
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.todo import left_of
from fastwi.files import to_json
from fastwi.report.run_files import RunDirectory

if TYPE_CHECKING:
    from fastwi.experiment.worker import Worker
    from fastwi.report.run_files import RunResults

NAMELESS = "run"  # what a run is called after where neither run.name nor a file gives a name

_DESCRIPTION = "Train a parent, clone it into children, average their weights, and train the average on."


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 interrupted."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    request = read_request(argv, "fastwi.train", _DESCRIPTION)
    if request.print_config:
        print(to_yaml(request.config), end="")
        return 0
    run = open_run(request.config, request.config_file.stem if request.config_file else NAMELESS)
    if request.dry_run:
        from fastwi.report.run_plan import run_plan

        plan = run_plan(run.planned, run.paths, run.worker.resources)
        print(to_json(plan.values) if request.json else "\n".join(plan.lines))
        return 0
    return _show(request, run, carry_out_run(run))


@dataclass(frozen=True)
class Run:
    """A run that may begin or go on: what names it, where its files are, what it consists of and who does it."""

    identity: str
    card: Card
    paths: RunDirectory
    planned: PlannedSweep
    worker: "Worker"


def open_run(config: Config, stem: str) -> Run:
    """Plan the run, and check that it can be done here and that its directory holds no other. Nothing is written.

    Without run.name it is called after `stem` and what decides its result. Raises UserError.
    """
    # torch takes seconds to import: bad configurations are refused before.
    from fastwi.experiment.execution import check_memory, worker_of
    from fastwi.report.tensorboard import require_tensorboard

    if config.run.tensorboard:
        require_tensorboard()
    card = read_card(Path(config.data.path))
    identity = config_hash(config, result_digest(card, config))
    paths = RunDirectory(Path(config.run.directory) / (config.run.name or f"{stem}-{identity}"))
    planned = plan_run(config, paths.store)
    config = planned.points[0].config
    worker = worker_of(planned)
    check_memory(config, worker)
    paths.check(identity, config)
    if left_of(planned).epochs:
        worker.resources.tried_engine(config)
    return Run(identity, card, paths, planned, worker)


def carry_out_run(run: Run, quiet: bool = False) -> "RunResults":
    """Do what is left of the run, and write its files. `quiet`: no progress is shown.

    Raises UserError where another process does it, or a file cannot be written.
    """
    from fastwi.experiment.execution import carry_out_planned, open_store
    from fastwi.report.manifest import manifest
    from fastwi.report.run_files import write_run
    from fastwi.report.run_plan import describe
    from fastwi.report.run_progress import RunProgress
    from fastwi.report.tensorboard import TensorBoard

    planned, paths, worker = run.planned, run.paths, run.worker
    config = planned.points[0].config
    engine = worker.resources.engine(config)
    about = manifest(run.card, engine.resolved, run.identity, planned.networks)
    with paths.begun(about, planned.spec.base), ExitStack() as stack:
        store = stack.enter_context(open_store(planned))
        board = stack.enter_context(TensorBoard(paths.tensorboard)) if config.run.tensorboard else None
        progress = stack.enter_context(RunProgress(planned, store, paths, board, describe(engine, planned), quiet))
        try:
            done = carry_out_planned(planned, worker, store, progress)
        finally:
            progress.write_rows()
        paths.write_checkpoints(planned, store, worker.resident)
        return write_run(planned, paths, run.card, progress.found(), done.failures())


def _show(request: Request, run: Run, found: "RunResults") -> int:
    from rich.console import Console

    from fastwi.report.summary import rich_table

    if found.tables and request.json:
        print(to_json({"directory": str(run.paths.directory), "metrics": found.rows}))
    elif found.tables:
        console = Console()
        for table in found.tables:
            console.print(rich_table(table))
        print(f"{run.paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/, store/")
    for line in found.problems:
        print(f"fastwi: error: {line}", file=sys.stderr)
    return EXIT_FAILED if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
