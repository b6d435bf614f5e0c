"""`python -m fastwi.train --config FILE`: train a parent, clone it, average the children, train on.

A run is a sweep of one point, with a store of its own in the run's directory; it reads from top to bottom in
`_train`. The same command goes on with a run that was interrupted.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.cli import EXIT_FAILED, run_command
from fastwi.config.read import Request, read_request
from fastwi.config.write import config_hash, to_mapping, to_yaml
from fastwi.data.card import read_card
from fastwi.experiment.contents import result_digest
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.rundir import RunDirectory
from fastwi.experiment.todo import left_of
from fastwi.files import to_json, write_text

if TYPE_CHECKING:
    from fastwi.engine.base import Engine
    from fastwi.experiment.worker import Worker
    from fastwi.report.summary import Row

_DESCRIPTION = "Train a parent, clone it into children, average their weights, and train the average on."


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad configuration or input, 130 interrupted."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    request = read_request(argv, "fastwi.train", _DESCRIPTION)
    if request.print_config:
        print(to_yaml(request.config), end="")
        return 0
    return _train(request)


def _train(request: Request) -> int:
    # torch takes seconds to import: bad configurations are refused before.
    from fastwi.experiment.estimate import check_memory
    from fastwi.experiment.scheduler import LocalExecutor, carry_out, limits_of
    from fastwi.experiment.store import Store
    from fastwi.experiment.store.precision import note_precision
    from fastwi.experiment.worker import Worker
    from fastwi.report.manifest import manifest
    from fastwi.report.run_progress import RunProgress
    from fastwi.report.tensorboard import TensorBoard, require_tensorboard

    if request.config.run.tensorboard:
        require_tensorboard()
    card = read_card(Path(request.config.data.path))
    identity = config_hash(request.config, result_digest(card, request.config))
    paths = _directory(request, identity)
    planned = plan_run(request.config, paths.store)
    config, options = planned.points[0].config, planned.spec.options
    worker = Worker(paths.store, Path.cwd(), options.memory_GiB * 2**30 / 2)
    worker.resources.expect(planned.tree.contents)
    check_memory(config, worker.resources.layout(config), worker.resources.engine(config).device)
    paths.check(identity, config)
    if left_of(planned).epochs:
        worker.resources.tried_engine(config)
    engine = worker.resources.engine(config)
    if request.dry_run:
        return _show_plan(request, planned, paths, worker)

    with paths.held(), ExitStack() as stack:
        paths.begin(manifest(card, engine.resolved, identity, planned.networks), request.config)
        store = stack.enter_context(Store.open(paths.store))
        if planned.auto:
            note_precision(store.directory, planned.auto)
        board = stack.enter_context(TensorBoard(paths.tensorboard)) if config.run.tensorboard else None
        progress = stack.enter_context(RunProgress(planned, store, paths, board, _describe(engine, planned)))
        limits = limits_of(options, worker.resources.state_bytes(config), engine.members_at_once)
        try:
            carry_out(planned.tree, store, LocalExecutor(worker), progress, limits)
        finally:
            store.export()
            rows = progress.write_rows()
        paths.write_checkpoints(planned, store, worker.resident)
        if any(row["stage"] == "interpolation" for row in rows):
            _show_results(request, rows, paths, f"{config.model.name} on {card.name}")
    return _show_diverged(rows)


def _directory(request: Request, identity: str) -> RunDirectory:
    """`runs/<name>`; a run without a name is called after its config file and what decides its result."""
    run = request.config.run
    stem = request.config_file.stem if request.config_file else "run"
    return RunDirectory(Path(run.directory) / (run.name or f"{stem}-{identity}"))


def _describe(engine: "Engine", planned: PlannedSweep) -> str:
    resolved = engine.resolved
    compiles = "; the first steps compile, which can take minutes" if resolved.backend == "compile" else ""
    why = f" (auto: {planned.auto.reason})" if planned.auto else ""
    return f"{resolved.backend} on {resolved.device}, {str(resolved.dtype).removeprefix('torch.')}{why}{compiles}"


def _show_diverged(rows: "list[Row]") -> int:
    from fastwi.experiment.results import divergence

    diverged = [row for row in rows if divergence(row)]
    for row in diverged:
        print(
            f"fastwi: error: {row['network']} diverged in epoch {row['epoch']}: {divergence(row)}; "
            "lower optimizer.learning_rate, or give schedule.warmup_iterations",
            file=sys.stderr,
        )
    return EXIT_FAILED if diverged else 0


def _show_results(request: Request, rows: "list[Row]", paths: RunDirectory, what: str) -> None:
    from rich.console import Console

    from fastwi.report.figure import draw_run
    from fastwi.report.summary import after_table, interpolation_table, rich_table

    experiment = request.config.experiment
    title = f"{what}: k = {experiment.k}, s = {experiment.s}, {experiment.children} children"
    tables = [interpolation_table(rows)] + ([after_table(rows)] if experiment.after else [])
    write_text(paths.table, f"# {title}\n\n" + "\n".join(table.markdown() for table in tables))
    draw_run(rows, paths.figure, title)
    if request.json:
        print(to_json({"directory": str(paths.directory), "metrics": rows}))
        return
    console = Console()
    for table in tables:
        console.print(rich_table(table))
    print(f"{paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/, store/")


def _show_plan(request: Request, planned: PlannedSweep, paths: RunDirectory, worker: "Worker") -> int:
    """The resolved configuration and what is left, with a time measured on a few steps of this very run."""
    from fastwi.experiment.estimate import measure_rates
    from fastwi.report.progress import clock, cost_of

    config, resources = planned.points[0].config, worker.resources
    todo, experiment = left_of(planned), config.experiment
    engine = resources.tried_engine(config)
    rates = measure_rates(engine, resources.network(config), *resources.splits(config))
    seconds = sum(cost_of(planned, task) for task in todo.tasks) / rates.trained_per_s + rates.start_s
    trained = len(todo.epochs) * planned.dataset_of(config).train_images
    if request.json:
        print(to_json({"directory": str(paths.directory), "config": to_mapping(config), "seconds": seconds,
                       "epochs_left": len(todo.epochs), "networks_to_measure": len(todo.probes),
                       "images_to_train": trained}))  # fmt: skip
        return 0
    print(to_yaml(request.config))
    print(f"# {paths.directory}: {'goes on' if paths.manifest.exists() else 'new'}")
    print(f"# {_describe(engine, planned)}")
    print(f"# parent: epochs 0 to {experiment.k}; {experiment.children} children: {experiment.k} to "
          f"{experiment.k + experiment.s}; then their average: {experiment.after} more")  # fmt: skip
    print(f"# left: {trained:,} images to train at {rates.trained_per_s:,.0f}/s, {len(todo.probes)} networks to "
          f"measure: about {clock(seconds)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
