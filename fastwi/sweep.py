"""`python -m fastwi.sweep --config FILE`: a grid as one tree of trajectories, every shared epoch trained once.

A sweep reads from top to bottom in `_sweep`. The same command goes on with a sweep that was interrupted, and may run
in several processes at once.
"""

import hashlib
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.cli import run_command
from fastwi.config.schema import Config
from fastwi.config.sweepfile import SweepRequest, read_sweep_request, sweep_name
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.points import points, shard_of
from fastwi.experiment.todo import left_of, without_lost
from fastwi.files import locked_directory, to_json, write_text
from fastwi.models.names import is_own
from fastwi.report.progress import clock, cost_of
from fastwi.sealed import MANIFEST, seal_directory, sealed_yaml

if TYPE_CHECKING:
    from fastwi.engine.precision import Choice
    from fastwi.experiment.scheduler import Executor
    from fastwi.experiment.store import Store
    from fastwi.experiment.worker import Worker

EXIT_PARTLY = 3


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input, 3 partly done, 130 interrupted."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    request = read_sweep_request(argv)
    if request.print_config:
        print(sweep_to_yaml(request.spec), end="")
        return 0
    return _sweep(request)


def _sweep(request: SweepRequest) -> int:
    # torch takes seconds to import: bad sweep files are refused before.
    from fastwi.experiment.scheduler import carry_out, limits_of
    from fastwi.experiment.store import Store
    from fastwi.experiment.store.precision import note_precision
    from fastwi.experiment.worker import Worker
    from fastwi.report.progress import TreeProgress

    options = replace(request.spec.options, name=sweep_name(request))
    request = replace(request, spec=replace(request.spec, options=options))
    every = list(points(request.spec))
    worker = Worker(Path(options.store), Path.cwd(), options.memory_GiB * 2**30 / 2)
    planned = plan_sweep(request.spec, every)
    worker.resources.expect(planned.tree.contents)
    if request.dry_run:
        return _show_plan(request, planned, worker)
    mine = planned if request.shard is None else plan_sweep(request.spec, shard_of(every, *request.shard))
    if options.executor == "local":  # other executors' workers try them, on the devices that they have
        _try_networks(mine, worker)
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(options.store))
        if planned.auto:
            note_precision(store.directory, planned.auto)
        executor = _executor(request, worker, stack)
        progress = stack.enter_context(TreeProgress(partial(cost_of, mine)))
        if planned.auto:
            progress.told(_auto_line(planned.auto))
        begun, config = time.monotonic(), planned.points[0].config
        resources = worker.resources
        limits = limits_of(options, resources.state_bytes(config), resources.engine(config).members_at_once)
        try:
            done = carry_out(mine.tree, store, executor, progress, limits)
        finally:
            store.export()
        progress.told(f"trained {done.trained} epochs, measured {done.probed} networks in "
                      f"{clock(time.monotonic() - begun)}")  # fmt: skip
        missing = _show_results(request, planned, store, worker)
        # For `python -m fastwi.report STORE`: which sweeps the store was made for.
        write_text(store.directory / "sweeps" / f"{options.name}.yaml", sealed_yaml(sweep_to_yaml(request.spec)))
    if done.failed:
        for reason in sorted(set(done.failed.values())):
            print(f"fastwi: {len(done.failed)} tasks not done: {reason}", file=sys.stderr)
        return EXIT_PARTLY
    return EXIT_PARTLY if missing and request.shard is None else 0


def _auto_line(auto: "Choice") -> str:
    return f"engine.precision: auto is {auto.precision}: {auto.reason}"


def _executor(request: SweepRequest, worker: "Worker", stack: ExitStack) -> "Executor":
    from fastwi.experiment.scheduler import LocalExecutor

    options = request.spec.options
    if options.executor == "local":
        return LocalExecutor(worker)
    from fastwi.experiment.distributed import RayExecutor

    memory_bytes = options.memory_GiB * 2**30 / 2
    executor = RayExecutor(Path(options.store), options.workers, options.gpus_per_worker, memory_bytes)
    stack.callback(executor.close)
    return executor


def _show_results(request: SweepRequest, planned: PlannedSweep, store: "Store", worker: "Worker") -> int:
    """Write tables and figures of all that is measured, by whichever process; returns how much is missing."""
    from rich.console import Console

    from fastwi.experiment.results import COLUMNS, missing_measurements, result_frame
    from fastwi.report.curves import draw_curves
    from fastwi.report.frames import write_frame
    from fastwi.report.heatmap import draw_heatmap
    from fastwi.report.manifest import manifest
    from fastwi.report.summary import rich_table
    from fastwi.report.sweep import GAIN_COLUMNS, cell_table, cells, gains, summary_markdown

    spec = request.spec
    directory = Path(spec.options.directory) / spec.options.name
    config = planned.points[0].config
    measured = without_lost(planned.tree, store.measurements(planned.tree.measurement_keys()))
    missing = missing_measurements(planned.tree, measured)
    frame = result_frame(spec, planned.points, planned.places, measured, planned.dataset_of)
    every_gain = gains(spec, planned.points, planned.places, measured)
    found = cells(every_gain)
    resolved = sweep_to_yaml(spec)
    identity = hashlib.sha256(resolved.encode()).hexdigest()[:12]
    card = worker.resources.card(config)
    # One process at a time: the manifest has the checksums of all other files.
    with locked_directory(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        write_frame(frame, directory / "results.parquet", COLUMNS)
        write_frame(every_gain, directory / "gains.parquet", GAIN_COLUMNS)
        write_text(directory / "sweep.yaml", sealed_yaml(resolved))
        write_text(directory / "summary.md", summary_markdown(spec, found, len(planned.points), missing))
        if found:
            title = f"{directory.name}: {config.model.name} on {card.name}"
            draw_heatmap(found, directory / "heatmap.png", title)
            draw_curves(spec, planned.points, planned.places, measured, directory / "curves.png", title)
        seal_directory(
            directory, manifest(card, worker.resources.engine(config).resolved, identity, planned.networks)
        )
    if request.json:
        print(to_json({"directory": str(directory), "points": len(planned.points),
                          "measurements": len(measured), "missing": missing}))  # fmt: skip
        return missing
    if found:
        Console().print(rich_table(cell_table(found)))
    print(f"{directory}: results.parquet, gains.parquet, summary.md, heatmap.png, curves.png"
          + (f"; {missing:,} measurements are not there yet" if missing else ""))  # fmt: skip
    return missing


def _try_networks(planned: PlannedSweep, worker: "Worker") -> None:
    """Try the user's own networks that are about to be trained. Raises ConfigError where one fails."""
    configs = (planned.tree.configs[node] for node in left_of(planned).epochs)
    kinds = {(c.model, c.engine, c.optimizer.batch_size, c.data): c for c in configs if is_own(c.model.name)}
    for config in kinds.values():
        worker.resources.tried_engine(config)


def _show_plan(request: SweepRequest, planned: PlannedSweep, worker: "Worker") -> int:
    """The tree, what it saves, and time and disk, measured on a few steps of this very sweep."""
    from fastwi.experiment.estimate import measure_rates
    from fastwi.report.sweep_plan import kept_bytes, kept_line, naive_epochs, tree_lines

    tree, resources = planned.tree, worker.resources
    todo = left_of(planned)
    epochs, naive = sum(1 for _ in tree.epoch_nodes()), naive_epochs(planned.points)
    costs: dict[tuple[object, ...], float] = {}  # in trained images, by what decides the speed
    examples: dict[tuple[object, ...], Config] = {}
    last: Config | None = None
    for task in todo.tasks:
        config = tree.config_of(task)
        if config is not last:
            last, kind = config, (config.model, config.engine, config.optimizer.batch_size, config.data.path)
            examples.setdefault(kind, config)
        costs[kind] = costs.get(kind, 0.0) + cost_of(planned, task)
    seconds = 0.0
    for each, config in examples.items():
        engine, network = resources.tried_engine(config), resources.network(config)
        seconds += costs[each] / measure_rates(engine, network, *resources.splits(config)).trained_per_s
    sizes, keep, lines = kept_bytes(planned, resources), planned.spec.options.keep, tree_lines(planned)
    if request.json:
        print(to_json({
            "points": len(planned.points), "epochs": epochs, "naive_epochs": naive,
            "epochs_left": len(todo.epochs), "networks_to_measure": len(todo.probes), "seconds": seconds,
            "bytes": sizes[keep], "bytes_by_keep": sizes, "tree": lines,
        }))  # fmt: skip
        return 0
    print(sweep_to_yaml(request.spec))
    for line in lines + ([_auto_line(planned.auto)] if planned.auto else []):
        print(f"# {line}")
    print(f"# {len(planned.points):,} points; {epochs:,} epochs in the tree, {naive:,} if each point were run "
          f"alone: {naive / max(1, epochs):.1f} times as many")  # fmt: skip
    print(f"# left: {len(todo.epochs):,} epochs to train, {len(todo.probes):,} networks to measure: about "
          f"{clock(seconds)} on one such device")  # fmt: skip
    print(f"# {kept_line(sizes, keep)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
