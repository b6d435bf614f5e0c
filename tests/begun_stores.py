"""Stores that another process is making, looked at from outside."""

from pathlib import Path

from fastwi.experiment.store import Store


def measured_so_far(directory: Path) -> int:
    """Measurements in the store of a run's or sweep's directory so far; 0 where there is none."""
    if not (directory / "store" / "store.json").exists():
        return 0
    try:
        with Store.open(directory / "store", create=False) as store:
            return len(store.measurements())
    except Exception:  # the store is being made
        return 0
