"""A planned run in words: what is left of it, and how long that takes here."""

from fastwi.config.write import to_mapping, to_yaml
from fastwi.engine.base import Engine
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.todo import left_of
from fastwi.report.progress import clock, cost_of
from fastwi.report.rates import measure_rates
from fastwi.report.run_files import RunDirectory
from fastwi.report.summary import Summary


def describe(engine: Engine, planned: PlannedSweep) -> str:
    """What a run is computed by, in words."""
    resolved = engine.resolved
    compiles = "; the first steps compile, which can take minutes" if resolved.backend == "compile" else ""
    why = f" (auto: {planned.auto.reason})" if planned.auto else ""
    return f"{resolved.backend} on {resolved.device}, {str(resolved.dtype).removeprefix('torch.')}{why}{compiles}"


def run_plan(planned: PlannedSweep, paths: RunDirectory, resources: Resources) -> Summary:
    """What is left of a run, with a time measured on a few of its own steps."""
    given, config = planned.spec.base, planned.points[0].config
    left, experiment = left_of(planned), config.experiment
    epochs, probes = planned.tree.count(left)
    engine = resources.tried_engine(config)
    rates = measure_rates(engine, resources.network(config), *resources.splits(config))
    seconds = sum(cost_of(planned, task) for task in left) / rates.trained_per_s + rates.start_s
    trained = epochs * planned.inputs_of(config).images("train", config.data)
    values = {
        "directory": str(paths.directory), "config": to_mapping(config), "seconds": seconds,
        "epochs_left": epochs, "networks_to_measure": probes, "images_to_train": trained,
    }  # fmt: skip
    lines = [
        to_yaml(given),
        f"# {paths.directory}: {'goes on' if paths.manifest.exists() else 'new'}",
        f"# {describe(engine, planned)}",
        f"# parent: epochs 0 to {experiment.k}; {experiment.children} children: {experiment.k} to "
        f"{experiment.k + experiment.s}; then their average: {experiment.after} more",
        f"# left: {trained:,} images to train at {rates.trained_per_s:,.0f}/s, {probes} networks to "
        f"measure: about {clock(seconds)}",
    ]
    return Summary(values, lines)
