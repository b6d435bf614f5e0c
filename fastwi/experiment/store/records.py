"""What the store keeps, as values, and the errors that name what is damaged."""

import math
import struct
import sys
from dataclasses import dataclass

from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.tree import MOVING, OWN, MeasurementKey

_FLOAT64 = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one state under one treatment of its batch-norm statistics.

    Attributes:
        state: key of the state.
        treatment: "own", or the name of the recomputation of the batch-norm statistics.
        epoch: epochs done; one in part counts as one.
        train_loss: mean over the training batches, where an epoch of training ends here.
        learning_rate: at the start of that epoch.
        test_loss: mean over the test images.
        test_accuracy: in %.
        seconds: of work. The one value that may differ when the same work is done again.
    """

    state: str
    treatment: str
    epoch: int
    train_loss: float | None
    learning_rate: float | None
    test_loss: float
    test_accuracy: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether a loss, in the epoch of training that this ends or on the test images, is NaN or infinite."""
        return bool(infinite_loss(self.train_loss, self.test_loss, True))

    def divergence(self) -> str:
        """What diverged, and where, in words."""
        trained = self.learning_rate is not None
        rate = f", at learning rate {self.learning_rate:g}" if trained else ""
        so = "nothing is made of it" if trained else "no gain is taken of it"
        moving = "the moving average of the weights of " * self.treatment.startswith(MOVING)
        loss = infinite_loss(self.train_loss, self.test_loss, self.treatment.removeprefix(MOVING) == OWN)
        return f"{moving}the network {self.state} diverged: {loss} in epoch {self.epoch}{rate}; {so}"

    @property
    def key(self) -> MeasurementKey:
        """What it is filed under."""
        return self.state, self.treatment

    def result(self) -> tuple[str | int | bytes | None, ...]:
        """All that must come out the same when it is measured again, as bits: NaN equals NaN, 0.0 is not -0.0."""
        return self.columns()[2:-1]

    def columns(self) -> tuple[str | int | bytes | None, ...]:
        """Every value in its order, as it is stored: a float as bytes."""
        floats = (self.train_loss, self.learning_rate, self.test_loss, self.test_accuracy, self.seconds)
        return (self.state, self.treatment, int(self.epoch), *map(float_bytes, floats))

    @classmethod
    def of(cls, state: str, treatment: str, epoch: int, *floats: bytes | None) -> "Measurement":
        """The inverse of `columns`."""
        # Of millions of measurements there are two or three treatments.
        return cls(state, sys.intern(treatment), epoch, *map(bytes_float, floats))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class StoredState:
    """What the index knows of a state's file: its size in bytes and its SHA-256 in hexadecimal."""

    key: str
    bytes: int
    sha256: str


def infinite_loss(train_loss: float | None, test_loss: float, own_statistics: bool) -> str:
    """Which of a network's losses is NaN or infinite, in words; empty where both are finite."""
    if not math.isfinite(train_loss or 0.0):
        return f"its training loss is {train_loss}"
    treatment = "" if own_statistics else " with recomputed batch-norm statistics"
    return "" if math.isfinite(test_loss) else f"its test loss{treatment} is {test_loss}"


class DamagedState(CheckpointError):
    """A state's file that is missing or is not what was stored. `key` names the state."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[type["DamagedState"], tuple[str, str]]:
        return type(self), (str(self), self.key)  # from a worker to its driver with the key


class DamagedIndex(UserError):
    """index.sqlite is damaged, or lost."""


def float_bytes(value: float | None) -> bytes | None:
    """The 8 bytes of a float64, little-endian. SQLite would store a NaN as NULL."""
    return None if value is None else _FLOAT64.pack(value)


def bytes_float(value: bytes | None) -> float | None:
    """The inverse of `float_bytes`."""
    return None if value is None else float(_FLOAT64.unpack(value)[0])
