"""The rows of a run, or of one point of a sweep, as metrics.jsonl has them: one a measurement."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastwi.config.sweep import RECOMPUTED
from fastwi.config.sweeppoints import Point
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN, MeasurementKey

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

Row = dict[str, Any]
ACCURACY = "test_accuracy_%"

_Wanted = tuple[str, int, str, str, str]  # stage, epochs done, network, state, treatment


def point_rows(point: Point, place: PointStates, measurements: "Mapping[MeasurementKey, Measurement]") -> list[Row]:
    """The rows that `python -m fastwi.train` writes to metrics.jsonl for `point`: same order, same keys.

    Left out are rows that have no measurement yet, and those of recomputed batch-norm statistics where the sweep
    doesn't measure them.
    """
    e = point.config.experiment
    end, children = e.k + e.s, {f"child {i}": states for i, states in enumerate(place.children, 1)}
    later = {"average": place.after, **{name: states[e.s :] for name, states in children.items()}}
    at_end = dict(zip(["average", *children], [place.average, *place.ends], strict=True))
    wanted: list[_Wanted] = [("parent", i, "parent", state, OWN) for i, state in enumerate(place.parent, 1)]
    for i in range(e.s):
        wanted += [("children", e.k + i + 1, name, states[i], OWN) for name, states in children.items()]
    for treatment in place.treatments if (place.average, OWN) in measurements else ():
        wanted += [("interpolation", end, name, state, treatment) for name, state in at_end.items()]
    for i in range(e.after):
        wanted += [("after", end + i + 1, name, states[i], OWN) for name, states in later.items() if states]
    return [_row(*row, measurements[row[3:]]) for row in wanted if row[3:] in measurements]


def _row(stage: str, epoch: int, network: str, state: str, treatment: str, found: "Measurement") -> Row:
    batch_norm = OWN if treatment == OWN else RECOMPUTED
    row: Row = {"stage": stage, "epoch": epoch, "network": network, "batch_norm": batch_norm}
    if stage != "interpolation":
        row |= {"train_loss": found.train_loss, "learning_rate": found.learning_rate}
    return row | {"test_loss": found.test_loss, ACCURACY: found.test_accuracy}
