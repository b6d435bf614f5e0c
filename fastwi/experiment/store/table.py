"""metrics.parquet: all measurements as columns, for other tools and for a lost index.

Columns: state, treatment, epoch, train_loss, learning_rate, test_loss, test_accuracy (%), seconds, crc. Rows are
sorted by state and treatment. `crc` is that of the index's row, so each row can be checked by itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from fastwi.experiment.store.index import FLOATS, MEASUREMENTS, Index, Row, is_whole
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import bytes_float, float_bytes
from fastwi.files import atomic_path, locked

_BATCH = 50_000  # rows made into columns at a time: as Python's objects they take several times the memory


def export(index: Index) -> None:
    """Write metrics.parquet from the index."""
    import polars

    types: dict[str, Any] = dict.fromkeys(MEASUREMENTS.columns, polars.Float64())
    types |= {"state": polars.String(), "treatment": polars.String(), "epoch": polars.Int64(), "crc": polars.UInt32()}
    places, frames = index.places, [polars.DataFrame(schema=types)]
    with locked(places.writing_lock, exclusive=False), atomic_path(places.metrics) as temporary:
        with index.reading() as transaction:
            rows = transaction.rows(MEASUREMENTS)
            while batch := list(islice(rows, _BATCH)):
                columns: dict[str, Any] = dict(zip(types, zip(*batch, strict=True), strict=True))
                columns |= {name: list(map(bytes_float, columns[name])) for name in FLOATS}
                frames.append(polars.DataFrame(columns, schema=types))
        polars.concat(frames).write_parquet(temporary)


def read_table(places: StorePlaces) -> Iterator[Row | None]:
    """The rows of metrics.parquet as those of the index; None for each that is damaged.

    A file that cannot be read at all gives one None, a missing file nothing.
    """
    import polars

    def read() -> list[Row]:
        # Eager, from the file's own bytes: a damaged one is an exception here and nothing later.
        return polars.read_parquet(places.metrics, columns=list(MEASUREMENTS.columns), use_statistics=False).rows()

    if not places.metrics.exists():
        return
    try:
        # In a thread: Ctrl-C and SIGTERM, raised in the main one, would be a panic to polars, and look like damage.
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(read).result()
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError, ValueError):
        yield None
        return
    for state, treatment, epoch, *floats, crc in rows:
        try:
            row = (state, treatment, epoch, *map(float_bytes, floats), crc)
        except (TypeError, ValueError):  # a column of another type
            yield None
        else:
            yield row if is_whole(row) else None
