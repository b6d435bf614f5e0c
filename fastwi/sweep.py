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
from fastwi.experiment.planned import PlannedSweep, plan_sweep
from fastwi.experiment.planner import Todo, naive_epochs, stopped_states, unfinished, without_lost
from fastwi.experiment.points import points, shard_of
from fastwi.experiment.tree import OWN, Epoch, MeasurementKey, Task
from fastwi.files import locked_directory, to_json, write_text
from fastwi.models.names import is_own
from fastwi.report.progress import EVALUATION_COST, clock
from fastwi.sealed import MANIFEST, seal_directory, sealed_yaml

if TYPE_CHECKING:
    from fastwi.engine.precision import Choice
    from fastwi.experiment.conduct import Executor
    from fastwi.experiment.store import Store
    from fastwi.experiment.worker import Worker
    from fastwi.report.sweep_progress import SweepProgress

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
    from fastwi.experiment.begun import note_precision
    from fastwi.experiment.conduct import conduct
    from fastwi.experiment.store import Store
    from fastwi.experiment.worker import Worker
    from fastwi.report.sweep_progress import SweepProgress

    options = replace(request.spec.options, name=sweep_name(request))
    request = replace(request, spec=replace(request.spec, options=options))
    every = list(points(request.spec))
    worker = Worker(Path(options.store), Path.cwd())
    planned = plan_sweep(request.spec, every)
    worker.expect(planned.tree.contents)
    if request.dry_run:
        return _show_plan(request, planned, worker)
    mine = planned if request.shard is None else plan_sweep(request.spec, shard_of(every, *request.shard))
    if options.executor == "local":  # other executors' workers try them, on the devices that they have
        _try_networks(mine, worker)
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(options.store))
        if planned.auto:
            note_precision(store.directory, planned.auto)
        progress = SweepProgress(partial(_cost, planned))
        executor = _executor(request, worker, progress, stack)
        stack.enter_context(progress)
        if planned.auto:
            progress.told(_auto_line(planned.auto))
        begun = time.monotonic()
        try:
            members = _members(request, planned.points[0].config, worker)
            conducted = conduct(mine.tree, store, executor, progress, members)
        finally:
            store.export()
        progress.told(f"trained {conducted.trained} epochs, measured {conducted.probed} networks in "
                      f"{clock(time.monotonic() - begun)}")  # fmt: skip
        missing = _show_results(request, planned, store, worker)
        # For `python -m fastwi.report STORE`: which sweeps the store was made for.
        write_text(store.directory / "sweeps" / f"{options.name}.yaml", sealed_yaml(sweep_to_yaml(request.spec)))
    if conducted.failed:
        for reason in sorted(set(conducted.failed.values())):
            print(f"fastwi: {len(conducted.failed)} tasks not done: {reason}", file=sys.stderr)
        return EXIT_PARTLY
    return EXIT_PARTLY if missing and request.shard is None else 0


def _auto_line(auto: "Choice") -> str:
    return f"engine.precision: auto is {auto.precision}: {auto.reason}"


def _cost(planned: PlannedSweep, task: Task) -> float:
    """The cost of a task, in trained images."""
    dataset = planned.dataset_of(task.config)
    if isinstance(task, Epoch):
        return dataset.train_images + EVALUATION_COST * dataset.test_images
    sample = 0 if task.treatment == OWN else min(task.images or dataset.train_images, dataset.train_images)
    return EVALUATION_COST * (dataset.test_images + sample)


def _members(request: SweepRequest, config: Config, worker: "Worker") -> int:
    """How many networks are trained together: what the engine is good for, within the memory bound."""
    options = request.spec.options
    # Beside a network's own row there are its gradient and a copy of it at the start of a job.
    room = options.memory_GiB * 2**30 // (3 * worker.state_bytes(config))
    return max(1, min(options.population or worker.engine(config).members_at_once, int(room)))


def _executor(request: SweepRequest, worker: "Worker", progress: "SweepProgress", stack: ExitStack) -> "Executor":
    from fastwi.experiment.conduct import LocalExecutor

    options = request.spec.options
    if options.executor == "local":
        return LocalExecutor(lambda job: worker.run(job, progress.images))
    from fastwi.experiment.distributed import RayExecutor

    executor = RayExecutor(Path(options.store), options.workers, options.gpus_per_worker)
    stack.callback(executor.close)
    return executor


def _show_results(request: SweepRequest, planned: PlannedSweep, store: "Store", worker: "Worker") -> int:
    """Write tables and figures of all that is measured, by whichever process; returns how much is missing."""
    from rich.console import Console

    from fastwi.experiment.results import missing_measurements, result_frame, write_results
    from fastwi.report.curves import draw_curves
    from fastwi.report.heatmap import draw_heatmap
    from fastwi.report.manifest import manifest
    from fastwi.report.summary import rich_table
    from fastwi.report.sweep import GAIN_COLUMNS, cell_table, cells, gains, summary_markdown

    spec = request.spec
    directory = Path(spec.options.directory) / spec.options.name
    config = planned.points[0].config
    measured = without_lost(planned.tree, store.measurements(planned.tree.measurement_keys()))
    missing = missing_measurements(planned.places, measured)
    frame = result_frame(spec, planned.points, planned.places, measured, planned.dataset_of)
    every_gain = gains(spec, planned.points, planned.places, measured)
    found = cells(every_gain)
    resolved = sweep_to_yaml(spec)
    identity = hashlib.sha256(resolved.encode()).hexdigest()[:12]
    card = worker.card(config)
    # One process at a time: the manifest has the checksums of all other files.
    with locked_directory(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        write_results(frame, directory / "results.parquet")
        write_results(every_gain, directory / "gains.parquet", GAIN_COLUMNS)
        write_text(directory / "sweep.yaml", sealed_yaml(resolved))
        write_text(directory / "summary.md", summary_markdown(spec, found, len(planned.points), missing))
        if found:
            title = f"{directory.name}: {config.model.name} on {card.name}"
            draw_heatmap(found, directory / "heatmap.png", title)
            draw_curves(spec, planned.points, planned.places, measured, directory / "curves.png", title)
        seal_directory(directory, manifest(card, worker.engine(config).resolved, identity, planned.networks))
    if request.json:
        print(to_json({"directory": str(directory), "points": len(planned.points),
                          "measurements": len(measured), "missing": missing}))  # fmt: skip
        return missing
    if found:
        Console().print(rich_table(cell_table(found)))
    print(f"{directory}: results.parquet, gains.parquet, summary.md, heatmap.png, curves.png"
          + (f"; {missing:,} measurements are not there yet" if missing else ""))  # fmt: skip
    return missing


def _left(planned: PlannedSweep) -> Todo:
    """What the store lacks; all where there is no store yet."""
    from fastwi.experiment.store import Store

    tree, directory = planned.tree, Path(planned.spec.options.store)
    measured, stored, diverged = set[MeasurementKey](), set[str](), list[str]()
    if (directory / "store.json").exists():
        with Store.open(directory, create=False) as store:
            found = store.measurements(tree.measurement_keys())
            measured, diverged = set(found), stopped_states(tree, found.values())
            stored = store.states(epoch.key for epoch in tree.epochs())
    return unfinished(tree, measured, stored, diverged)


def _try_networks(planned: PlannedSweep, worker: "Worker") -> None:
    """Try the user's own networks that are about to be trained. Raises ConfigError where one fails."""
    configs = (epoch.config for epoch in _left(planned).epochs)
    kinds = {(c.model, c.engine, c.optimizer.batch_size, c.data): c for c in configs if is_own(c.model.name)}
    for config in kinds.values():
        worker.tried_engine(config)


def _show_plan(request: SweepRequest, planned: PlannedSweep, worker: "Worker") -> int:
    """The tree, what it saves, and time and disk, measured on a few steps of this very sweep."""
    from fastwi.experiment.estimate import measure_rates

    tree = planned.tree
    epochs = list(tree.epochs())
    todo = _left(planned)
    naive = naive_epochs(planned.points)
    costs: dict[tuple[object, ...], float] = {}  # in trained images, by what decides the speed
    examples: dict[tuple[object, ...], Config] = {}
    for task in todo.tasks:
        kind = (task.config.model, task.config.engine, task.config.optimizer.batch_size, task.config.data.path)
        costs[kind] = costs.get(kind, 0.0) + _cost(planned, task)
        examples.setdefault(kind, task.config)
    seconds = sum(
        cost / measure_rates(worker.tried_engine(config), config, *worker.splits(config)).trained_per_s
        for (kind, cost) in costs.items()
        for config in [examples[kind]]
    )
    size = sum(worker.state_bytes(epoch.config) for epoch in epochs if epoch.key in tree.stops)
    lines = _tree_lines(planned)
    if request.json:
        print(to_json({
            "points": len(planned.points), "epochs": len(epochs), "naive_epochs": naive,
            "epochs_left": len(todo.epochs), "networks_to_measure": len(todo.probes), "seconds": seconds,
            "bytes": size, "tree": lines,
        }))  # fmt: skip
        return 0
    print(sweep_to_yaml(request.spec))
    for line in lines + ([_auto_line(planned.auto)] if planned.auto else []):
        print(f"# {line}")
    print(f"# {len(planned.points):,} points; {len(epochs):,} epochs in the tree, {naive:,} if each point were run "
          f"alone: {naive / max(1, len(epochs)):.1f} times as many")  # fmt: skip
    print(f"# left: {len(todo.epochs):,} epochs to train, {len(todo.probes):,} networks to measure: about "
          f"{clock(seconds)} on one such device; the store grows to about {size / 2**20:,.0f} MiB")  # fmt: skip
    return 0


def _tree_lines(planned: PlannedSweep) -> list[str]:
    """The tree in words, a line a kind of trajectory."""
    tree = planned.tree
    kinds: dict[str, dict[tuple[str, int], set[str]]] = {"parents": {}, "children": {}, "averages": {}}
    for point, place in zip(planned.points, planned.places, strict=True):
        seeds = point.config.seeds
        clone = place.parent[-1] if place.parent else ""
        kinds["parents"].setdefault((str(point.parent), 0), set()).update(place.parent)
        for noise, keys in zip(seeds.child_noise, place.children, strict=True):
            kinds["children"].setdefault((clone, noise), set()).update(keys)
        kinds["averages"].setdefault((place.average, seeds.average_noise), set()).update(place.after)
    lines = []
    for name, trajectories in kinds.items():
        epochs: set[str] = set().union(*trajectories.values())
        ends = sorted({tree.states[key].epoch for key in epochs & tree.stops})
        where = f", kept at epochs {_listed(ends)}" if ends else ""
        lines.append(f"{name}: {len(trajectories):,} trajectories, {len(epochs):,} epochs{where}")
    return lines


def _listed(numbers: list[int]) -> str:
    if len(numbers) <= 12:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[:8]))} ... {numbers[-1]}"


if __name__ == "__main__":
    sys.exit(main())
