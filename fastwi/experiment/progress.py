"""How far a run is, on disk: progress.json, which vouches for the rows of metrics.jsonl and for the networks' state.

The order of writing is state, metrics, progress. A kill in between leaves a state or rows that progress.json does not
know of: the step is done again, and they are written again.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fastwi.errors import CheckpointError
from fastwi.experiment.paths import RunPaths
from fastwi.files import atomic_open, to_json
from fastwi.sealed import file_sha256, read_sealed, sha256_of, write_sealed

Row = dict[str, Any]

_WORDS = ("stage", "network", "batch_norm")  # the columns of a row that hold no number
_TYPES = {"identity": str, "steps_done": int, "steps": int, "seconds": float, "precision": str, "rows": int,
          "metrics_sha256": str, "state_sha256": str}  # fmt: skip


def write_progress(paths: RunPaths, rows: Iterable[Row], told: Mapping[str, Any]) -> None:
    """Write metrics.jsonl, then progress.json. The state file of `told["steps_done"]` is there already."""
    lines = [to_json(row).encode() + b"\n" for row in rows]
    content = b"".join(lines)
    with atomic_open(paths.metrics) as stream:
        stream.write(content)
    state = file_sha256(paths.state(told["steps_done"]))
    vouched = {"rows": len(lines), "metrics_sha256": sha256_of(content), "state_sha256": state}
    write_sealed(paths.progress, {**told, **vouched})


def read_progress(paths: RunPaths) -> dict[str, Any]:
    """What progress.json holds; empty where there is none. Raises CheckpointError where it is damaged."""
    if not paths.progress.exists():
        return {}
    found = read_sealed(paths.progress, _fix(paths))
    lacking = next((name for name, kind in _TYPES.items() if not isinstance(found.get(name), kind)), None)
    if lacking is not None:
        raise CheckpointError(f"{paths.progress}: has no {lacking}, or not as this fastwi writes it; {_fix(paths)}")
    return found


def read_rows(paths: RunPaths, progress: Mapping[str, Any]) -> list[Row]:
    """The rows of metrics.jsonl that `progress` knows of, with NaN and Infinity as the numbers that they were.

    Raises CheckpointError where they are not as they were written.
    """
    try:
        content = paths.metrics.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{paths.metrics}: cannot be read ({error.strerror}); {_fix(paths)}") from None
    lines = content.split(b"\n")[: progress["rows"]]
    if sha256_of(b"".join(line + b"\n" for line in lines)) != progress["metrics_sha256"]:
        raise CheckpointError(f"{paths.metrics}: is damaged or was changed (checksum); {_fix(paths)}")
    return [{name: _value(name, value) for name, value in json.loads(line).items()} for line in lines]


def check_state(paths: RunPaths, progress: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the state file is not the one that `progress` was written for."""
    path = paths.state(progress["steps_done"])
    try:
        whole = file_sha256(path) == progress["state_sha256"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_fix(paths)}") from None
    if not whole:
        raise CheckpointError(f"{path}: is damaged or of another step (checksum); {_fix(paths)}")


def _fix(paths: RunPaths) -> str:
    return f"delete {paths.directory} to start this run again"


def _value(name: str, value: Any) -> Any:
    return float(value) if isinstance(value, str) and name not in _WORDS else value
