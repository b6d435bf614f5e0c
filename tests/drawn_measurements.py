"""Planned sweeps with measurements that are drawn, not trained: what frames and tables are made of, quickly."""

import math
import random

from mappings import config_from_mapping

from fastwi.config.sweep import SweepOptions, SweepSpec
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.store import Measurement
from fastwi.experiment.tree import OWN

INPUTS = Inputs("0123456789abcdef", {"train": 100, "test": 50})


def inputs_of(config):
    return INPUTS


def spec_of(axes: dict, experiment: dict | None = None, **options) -> SweepSpec:
    """A sweep over `axes`, by dotted name, of a tiny base configuration."""
    base = config_from_mapping({
        "optimizer": {"batch_size": 50}, "engine": {"precision": "fp32"},
        "experiment": {"k": 2, "s": 1, "after": 2, **(experiment or {})},
    })  # fmt: skip
    return SweepSpec(base, {path: tuple(values) for path, values in axes.items()}, SweepOptions(**options))


def planned(spec: SweepSpec) -> PlannedSweep:
    """The sweep, planned on `INPUTS`."""
    return plan_sweep(spec, inputs_of=inputs_of)


def made(spec: SweepSpec, seed: int) -> tuple[PlannedSweep, dict]:
    """The sweep, planned, and a measurement of all that it measures."""
    sweep = planned(spec)
    return sweep, drawn(sweep.tree, seed)


def drawn(tree, seed: int) -> dict:
    """A measurement of each epoch and probe; accuracies of a later epoch are higher, mostly."""
    found = {}
    for node in tree.epoch_nodes():
        key, epoch = tree.keys[node], tree.epochs[node]
        draw = random.Random(f"{seed} {key}")
        found[key, OWN] = Measurement(
            key, OWN, epoch, draw.uniform(0, 2), 0.1 / epoch, draw.uniform(0, 2),
            100 * (1 - math.exp(-epoch / 8)) + draw.uniform(-1, 0), 1.0,
        )  # fmt: skip
    for probe in tree.probes():
        name = tree.measurement_key(probe)
        draw = random.Random(f"{seed} {name}")
        epoch = tree.epochs[tree.start_of(probe)]
        accuracy = 100 * (1 - math.exp(-epoch / 8)) + draw.uniform(-1, 1)
        found[name] = Measurement(*name, epoch, None, None, draw.uniform(0, 2), accuracy, 1.0)
    return found
