"""Stores that another process is making, or has left, looked at from outside."""

from pathlib import Path

from fastwi.experiment.store import Store
from fastwi.experiment.store.index import CLAIMS


def measured_so_far(directory: Path) -> int:
    """Measurements in the store of a run's or sweep's directory so far; 0 where there is none."""
    if not (directory / "store" / "store.json").exists():
        return 0
    try:
        with Store.open(directory / "store", create=False) as store:
            return len(store.measurements())
    except Exception:  # the store is being made
        return 0


def claims(store: Store) -> dict[tuple[str, str], str]:
    """The owners of all claims, dead ones among them."""
    with store.reading() as transaction:
        return {row[:2]: row[2] for row in transaction.rows(CLAIMS)}
