"""A sweep: a base configuration, axes over its keys, parents, children, and how it is carried out.

The sweep's own options are described as the configuration's are (`fastwi.config.schema`): one field, one help text.
"""

from dataclasses import dataclass, field

from fastwi.config.schema import Config, option

Scalar = bool | int | float | str

RECOMPUTED = "recomputed"
"""Of batch-norm statistics at evaluation: on training images, for every network alike. Else they are its own."""

KEEP = ("none", "ends", "stops", "all")
"""Choices of sweep.keep; each keeps what the ones before it do."""


@dataclass(frozen=True)
class SweepOptions:
    """The `sweep` section of a sweep file."""

    name: str = option("", "name of the sweep's directory; empty: the sweep file's name")
    directory: str = option("sweeps", "directory that holds the sweeps' results")
    store: str = option("store", "directory of the store: trained states and measurements, shared by sweeps")
    parents: tuple[int, ...] = option(
        (0,), "initialisation seeds, one a parent; intervals and verdicts need 5", low=0, high=2**31 - 1
    )
    children: int = option(2, "children of each parent at each k", low=2, high=100_000)
    tuple_size: int = option(2, "children that are averaged together", low=2, high=4096)
    tuples: str = option(
        "disjoint",
        "which children are averaged: 1 with 2, 3 with 4 ..., or every combination of tuple_size of them",
        choices=("disjoint", "all"),
    )
    alphas: tuple[float, ...] = option(
        (), "places on the line A -> B, for pairs: the weight of the second child; empty: the plain mean"
    )
    measure: tuple[str, ...] = option(
        ("own", RECOMPUTED),
        "batch-norm treatments that are measured at interpolation",
        choices=("own", RECOMPUTED),
    )
    keep: str = option(
        "stops",
        "states that stay in the store. none: no state; ends: the last of each child and average; stops: those at "
        "each k and k + s too; all: those after every epoch",
        choices=KEEP,
    )
    executor: str = option("local", "who trains: this process, or Ray's actors", choices=("local", "ray"))
    workers: int = option(0, "Ray actors; 0: one a GPU, or one where there is none", low=0, high=100_000)
    gpus_per_worker: float = option(1.0, "GPUs of a Ray actor, where there are any; fractions share one", low=0.0)
    population: int = option(0, "most networks trained together; 0: as many as the engine is good for", low=0)
    memory_GiB: float = option(
        4.0,
        "most memory for networks: those trained together, and those held for what is made of them",
        unit="GiB",
        low=0.0,
    )
    checkpoint_seconds: float = option(
        30.0,
        "most seconds of training between two writes of a state that training goes on from: what a kill loses",
        unit="s",
        low=0.0,
    )


@dataclass(frozen=True)
class Axis:
    """One key of the configuration, as `section.key`, and the values that it takes in turn."""

    path: str
    values: tuple[Scalar | tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep."""

    base: Config
    axes: tuple[Axis, ...] = ()
    options: SweepOptions = field(default_factory=SweepOptions)
