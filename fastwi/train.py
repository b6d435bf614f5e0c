"""`python -m fastwi.train --config FILE`: train a parent, clone it, average the children, train on.

A run reads from top to bottom in `_train`. The same command goes on with a run that was interrupted.
"""

import dataclasses
import fcntl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.cli import EXIT_FAILED, run_command
from fastwi.config.read import Request, read_request
from fastwi.config.write import config_hash, to_mapping, to_yaml
from fastwi.errors import UserError
from fastwi.experiment.networks import sources_of
from fastwi.experiment.paths import RunPaths
from fastwi.experiment.plan import check_batch, check_contents, network_contents, plan, result_digest, work
from fastwi.files import to_json, write_text
from fastwi.sealed import sealed_yaml, write_sealed

if TYPE_CHECKING:
    from fastwi.data.batches import Dataset
    from fastwi.engine.base import Engine
    from fastwi.experiment.protocol import Listener
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
    from fastwi.data.split import open_splits
    from fastwi.engine.choose import build_engine
    from fastwi.engine.device import resolve_device
    from fastwi.engine.trial import try_training
    from fastwi.experiment.begun import engine_of_run
    from fastwi.experiment.estimate import check_memory
    from fastwi.experiment.protocol import Figure1Run, diverged, divergence, network_for
    from fastwi.population import Population
    from fastwi.report.manifest import manifest
    from fastwi.report.progress import RunProgress
    from fastwi.report.tensorboard import TensorBoard, require_tensorboard

    config = request.config
    if config.run.tensorboard:
        require_tensorboard()
    device = resolve_device(config.engine.device)
    train, test, card = open_splits(config.data, device)
    check_batch(config, len(train))
    contents, networks = result_digest(card, config), sources_of([config.model.name])
    model = network_for(config, train)
    check_memory(config, model, device)
    check_contents(
        contents, network_contents(config, built=True), config
    )  # what was replaced meanwhile has another name
    start = Population.from_modules([model], device=device)
    identity = config_hash(config, contents)
    paths = RunPaths(_directory(request, identity))
    begun = engine_of_run(config.engine, paths)
    engine = build_engine(dataclasses.replace(config, engine=begun), model)
    if not paths.progress.exists():
        try_training(engine, config, model, train, test)
    said = _describe(engine, begun != config.engine)
    if request.dry_run:
        return _show_plan(request, paths, engine, train, test, said)

    with _locked(paths):
        if not paths.progress.exists():
            write_sealed(paths.manifest, manifest(card, engine.resolved, identity, networks))
            write_text(paths.config, sealed_yaml(to_yaml(config)))
        with ExitStack() as stack:
            listener: Listener = stack.enter_context(RunProgress(config, len(train), len(test), said))
            if config.run.tensorboard:
                listener = stack.enter_context(TensorBoard(paths, listener))
            rows = Figure1Run(config, train, test, engine, paths, identity, listener, start).run()
        if any(row["stage"] == "interpolation" for row in rows):
            _show_results(request, rows, paths, f"{config.model.name} on {card.name}")
    for row in diverged(rows):
        print(
            f"fastwi: error: {row['network']} diverged in epoch {row['epoch']}: {divergence(row)}; "
            "lower optimizer.learning_rate, or give schedule.warmup_iterations",
            file=sys.stderr,
        )
    return EXIT_FAILED if diverged(rows) else 0


def _directory(request: Request, identity: str) -> Path:
    """`runs/<name>`; a run without a name is called after its config file and what decides its result."""
    config = request.config
    stem = request.config_file.stem if request.config_file else "run"
    return Path(config.run.directory) / (config.run.name or f"{stem}-{identity}")


@contextmanager
def _locked(paths: RunPaths) -> Iterator[None]:
    """Hold the run's directory: two processes that train one run would overwrite each other's steps."""
    try:
        paths.directory.mkdir(parents=True, exist_ok=True)
        stream = open(paths.lock, "w")  # noqa: SIM115 - held open for as long as the run lasts
    except OSError as error:
        raise UserError(
            f"{paths.directory}: cannot be written ({error.strerror}); give another run.directory"
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{paths.directory}: another process trains this run; wait for it or give another run.name"
            ) from None
        yield


def _describe(engine: "Engine", begun: bool) -> str:
    resolved = engine.resolved
    compiles = "; the first steps compile, which can take minutes" if resolved.backend == "compile" else ""
    why = f" (auto: {resolved.why})" if resolved.why else " (the run was begun in it)" if begun else ""
    return f"{resolved.backend} on {resolved.device}, {str(resolved.dtype).removeprefix('torch.')}{why}{compiles}"


def _show_results(request: Request, rows: "list[Row]", paths: RunPaths, what: str) -> None:
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
    print(f"{paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/")


def _show_plan(
    request: Request, paths: RunPaths, engine: "Engine", train: "Dataset", test: "Dataset", said: str
) -> int:
    """The resolved configuration and the plan, with a time measured on a few steps of this very run."""
    from fastwi.experiment.estimate import measure_rates
    from fastwi.report.progress import clock

    config = request.config
    planned = plan(config.experiment)
    works = [work(step, config, len(train), len(test)) for step in planned]
    trained, evaluated = sum(w.trained for w in works), sum(w.evaluated for w in works)
    rates = measure_rates(engine, config, train, test)
    seconds = trained / rates.trained_per_s + evaluated / rates.evaluated_per_s + rates.start_s
    steps = [dataclasses.asdict(step) | dataclasses.asdict(w) for step, w in zip(planned, works, strict=True)]
    if request.json:
        print(to_json({"directory": str(paths.directory), "config": to_mapping(config), "steps": steps,
                          "seconds": seconds}))  # fmt: skip
        return 0
    experiment = config.experiment
    print(to_yaml(config))
    print(f"# {paths.directory}: {'goes on' if paths.progress.exists() else 'new'}")
    print(f"# {said}")
    print(f"# parent: epochs 0 to {experiment.k}; {experiment.children} children: {experiment.k} to "
          f"{experiment.k + experiment.s}; then their average: {experiment.after} more")  # fmt: skip
    print(f"# {trained:,} images trained at {rates.trained_per_s:,.0f}/s, "
          f"{evaluated:,} passed forward at {rates.evaluated_per_s:,.0f}/s: about {clock(seconds)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
