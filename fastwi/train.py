"""`python -m fastwi.train --config FILE`: train a parent, clone it, average the children, train on.

A run is a sweep of one point, with a store of its own in the run's directory; it reads from top to bottom in
`open_run` and `carry_out_run`, which `fastwi.run` calls too. The same command goes on with an interrupted run, and
with a finished one whose experiment.after was raised.
"""

import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastwi.cli import EXIT_FAILED, command
from fastwi.config.read import read_request
from fastwi.config.schema import Config
from fastwi.config.write import config_hash, to_yaml
from fastwi.data.card import read_card
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.report.figures import set_style

if TYPE_CHECKING:
    from fastwi.experiment.worker import Worker
    from fastwi.report.results import Results
    from fastwi.report.run_directory import RunDirectory

_DESCRIPTION = "Train a parent, its children, and the average of these."


@partial(command, resumes=True)
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 interrupted."""
    request = read_request(argv, "fastwi.train", _DESCRIPTION, draws=True)
    set_style(request.flags.figures)
    with request.naming_config():
        run = open_run(request.config, request.config_file)
    shorter = run.paths.shorter_run(run.planned)
    if shorter:
        print(f"fastwi: {shorter}", file=sys.stderr)
    if request.flags.dry_run:
        from fastwi.report.plan import plan

        yaml = to_yaml(request.config, changed=True)
        plan(run.planned, run.worker.resources, run.paths.directory, yaml).show(request.flags.json)
        return 0
    found = carry_out_run(run).summary
    found.show(request.flags.json)
    return EXIT_FAILED if found.problems else 0


class Run(NamedTuple):
    """A run that may begin or go on. `identity`: what names it."""

    identity: str
    paths: "RunDirectory"
    planned: PlannedSweep
    worker: "Worker"


def open_run(config: Config, file: Path | None) -> Run:
    """Plan the run, and check that it can be done here, under its name or one of `file` and what decides its result.

    Nothing is written. Raises UserError.
    """
    # torch takes seconds to import: bad configurations are refused before.
    from fastwi.experiment.execution import worker_for
    from fastwi.report.run_directory import RunDirectory, require_tensorboard

    if config.run.tensorboard:
        require_tensorboard()
    inputs = Inputs.of(read_card(config.data.path), config)
    identity = config_hash(config, inputs.digest)
    name = config.run.name or f"{file.stem if file else 'run'}-{identity}"
    paths = RunDirectory(Path(config.run.directory, name))
    planned = plan_run(config, paths.store, inputs)
    paths.check(planned)
    return Run(identity, paths, planned, worker_for(planned))


def carry_out_run(run: Run, quiet: bool = False) -> "Results":
    """Do what is left of the run, and write its files. `quiet`: no progress is shown. Raises UserError."""
    from fastwi.experiment.execution import carry_out_planned
    from fastwi.experiment.store import Store
    from fastwi.report.manifest import manifest
    from fastwi.report.plan import engine_text
    from fastwi.report.progress import TreeProgress
    from fastwi.report.results import write_run
    from fastwi.report.run_directory import RunRecord

    identity, paths, planned, worker = run
    config = planned.points[0].config
    engine, card = worker.resources.engine(config), worker.resources.card(config)
    about = manifest([card], engine.resolved, identity, planned.networks)
    with paths.begun(about, planned), Store.open(paths.store) as store:
        with (
            closing(RunRecord(planned, store, paths)) as record,
            TreeProgress(planned, engine_text(engine, planned), quiet, record) as progress,
        ):
            failures = carry_out_planned(planned, worker, store, progress)
        paths.write_checkpoints(planned, store, worker.resident)
        return write_run(planned, paths, store, card.name, failures)


if __name__ == "__main__":
    sys.exit(main())
