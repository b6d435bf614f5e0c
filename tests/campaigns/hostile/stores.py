"""Damaged stores. A store never gives a value that was not stored: it names the damage, or the value is right."""

import contextlib
import hashlib
import random
import shutil
import sqlite3
from functools import partial
from pathlib import Path

import torch
from torch import nn

import fastwi.store
from fastwi.errors import UserError
from fastwi.experiment.store import Measurement, Store, read_states, write_states
from fastwi.experiment.store.index import MEASUREMENTS, sealed
from fastwi.experiment.store.repair import export
from fastwi.population import Population
from fastwi.population.layout import MATRICES
from hostile.mutate import TEXTS, damaged
from hostile.target import Finding, accepted, command, odd_file

_ACTIONS = [line.split() for line in (
    "ls", "ls --json", "du", "verify", "verify --json", "gc", "verify --repair", "rebuild",
)]  # fmt: skip
_HEADER = [
    (16, 2), (18, 1), (19, 1), (20, 1), (28, 4), (32, 4), (36, 4), (44, 4), (56, 4), (100, 1), (103, 2), (105, 2),
]  # fmt: skip
_INDEX = ("index.sqlite", "index.sqlite-journal")


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:40]


def _population(number: int) -> Population:
    torch.manual_seed(number)
    return Population.from_modules([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))])


_NETWORK = _population(0)


def _rows(number: int) -> list[Measurement]:
    values = (number % 7, number / 3, 0.1, number / 7, 50.0, 0.5)
    return [Measurement(key_of(number), treatment, *values) for treatment in ("own", "recomputed")]


Held = tuple[dict[tuple[str, str], object], dict[str, bytes]]


def _held(store: Store) -> Held:
    """All measurements as bits, all states as bytes."""
    files = store.state_files().items()
    states = {key: _bytes_of(read_states(store.directory, [file], _NETWORK.layout)) for key, file in files}
    return {key: m.result() for key, m in store.measurements().items()}, states


def _bytes_of(population: Population) -> bytes:
    return b"".join(getattr(population, name).numpy().tobytes() for name in MATRICES)


class Stores:
    """Every action of `fastwi.store`, and what the store gives to a sweep."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        with Store.open(directory / "closed") as store:
            for number in range(30):
                states = [(key_of(number), _population(number))] if number < 4 else []
                store.commit(_rows(number), write_states(store.directory, states), [])
            store.keep([key_of(0)])
            export(store)
        # As a killed process leaves it: in the middle of a transaction, with claims and a pin without a live owner.
        shutil.copytree(directory / "closed", directory / "live")
        with Store.open(directory / "live") as store, store.owner() as owner:
            owner.claim([(key_of(n), "own") for n in range(40, 44)])
            owner.pin([key_of(1)])
            with store.writing() as transaction:
                transaction.execute("PRAGMA cache_size = 1")
                transaction.add(MEASUREMENTS, [sealed(*m.columns()) for n in range(30, 200) for m in _rows(n)])
                shutil.copytree(directory / "live", directory / "killed")
        shutil.rmtree(directory / "live")

    def __init__(self, corpus: Path) -> None:
        self._stores = [corpus / "closed", corpus / "killed"]
        with Store.open(shutil.copytree(corpus / "closed", corpus / "read")) as store:
            self._measurements, self._states = _held(store)
        # What goes with no state's file.
        self._kept = {key for key in self._measurements if key[0] not in self._states}
        # A damaged journal may undo a part of the transaction only.
        self._measurements |= {m.key: m.result() for n in range(30, 200) for m in _rows(n)}
        shutil.rmtree(corpus / "read")

    def attempt(self, draw: random.Random, work: Path) -> bool:
        directory = Path(shutil.copytree(draw.choice(self._stores), work / "store"))
        whole = _index_of(directory)
        for _ in range(1 + min(int(draw.expovariate(1.0)), 4)):
            self._damage(draw, directory, work.parent.parent / "outside")
        kept = self._kept if _index_of(directory) == whole else set()
        taken = True
        for action in draw.sample(_ACTIONS, draw.randrange(1, 4)):
            codes = (0, 1, 2) if action[0] == "verify" else (0, 2)
            code, _ = command(fastwi.store.main, [*action, str(directory)], codes)
            taken = taken and code == 0
            if action == ["rebuild"] and code == 0:
                self._is_whole(directory)
        return self._values_are_right(directory, kept) and taken

    def _is_whole(self, directory: Path) -> None:
        """A rebuilt store has no damage, and takes new work."""
        code, shown = command(fastwi.store.main, ["verify", str(directory)], (0, 1, 2))
        if code != 0:
            raise Finding(f"damaged after its rebuilding:\n{shown}")
        with Store.open(directory) as store, store.owner() as owner:
            store.commit(_rows(199), [], owner.claim([(key_of(199), "own")]))

    def _values_are_right(self, directory: Path, kept: set[tuple[str, str]]) -> bool:
        """Whatever the store gives is what was stored, and no value of `kept` is lost; whether it gives all it says."""
        try:
            with Store.open(directory, create=False) as store:
                found = store.measurements()
                if not kept <= found.keys():
                    raise Finding(f"lost, with a whole index: {sorted(kept - found.keys())}")
                for key, m in found.items():
                    if self._measurements.get(key) != m.result():
                        raise Finding(f"measurement {key} is not what was stored")
                for key in sorted(store.states()):
                    read = partial(read_states, store.directory, [store.state_files()[key]], _NETWORK.layout)
                    found = accepted(read)
                    if found is not None and _bytes_of(found) != self._states.get(key):
                        raise Finding(f"state {key} is not what was stored")
        except UserError:
            return False
        return True

    def _damage(self, draw: random.Random, directory: Path, outside: Path) -> None:
        files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            return
        preferred = [path for path in files if path.name in _INDEX]
        path = draw.choice(preferred if preferred and draw.random() < 0.4 else files)
        data, kind = path.read_bytes(), draw.random()
        other = draw.choice([each for each in files if "states" not in each.parts] or [path])
        if kind < 0.55:
            path.write_bytes(damaged(draw, data, _numbers(path, data), [other.read_bytes()]))
        elif kind < 0.65:
            path.unlink()
        elif kind < 0.75:
            path.unlink()
            odd_file(draw, path, outside)
        elif kind < 0.80:
            # Not one state in the place of another: without the index nothing could tell them apart.
            path.write_bytes(other.read_bytes())
        elif kind < 0.85:
            path.unlink()
            _foreign(draw, path)
        elif kind < 0.92:
            stray = directory / draw.choice(("states", "states/ab", "owners", "damaged", ".", "sweeps"))
            stray.mkdir(parents=True, exist_ok=True)
            name = draw.choice(
                (f"{key_of(5)}.safetensors", ".x.tmp", "x.lock", "index.rebuilt.sqlite", "kept.lock", "é\n\x1b")
            )
            if not (stray / name).exists() and not (stray / name).is_symlink():
                odd_file(draw, stray / name, outside)
        else:
            _sql(draw, directory / "index.sqlite")


def _index_of(directory: Path) -> dict[str, bytes]:
    """The index and SQLite's logs."""
    return {path.name: path.read_bytes() for path in directory.glob("index.sqlite*") if path.is_file()}


def _numbers(path: Path, data: bytes) -> list[tuple[int, int]]:
    """Sizes and places within SQLite's header, Parquet's footer and a checkpoint's header."""
    if path.name == "index.sqlite":
        return _HEADER
    if path.suffix == ".parquet":
        return [(len(data) - 8, 4)]
    return [(0, 8)] if len(data) > 8 else []


def _foreign(draw: random.Random, path: Path) -> None:
    """Another program's database, or a store's of another day."""
    table = draw.choice(("measurements", "tallies", "states", "other"))
    data, version = draw.randbytes(20), draw.random() < 0.5
    # SQLite refuses to write beside some of the store's own logs: then it stays what it was.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (a TEXT, b BLOB)")
        connection.execute(f"INSERT INTO {table} VALUES (?, ?)", ("x", data))
        if version:
            connection.execute("PRAGMA user_version = 7")
        connection.commit()


def _sql(draw: random.Random, index: Path) -> None:
    """A change made through SQLite itself: structure whole, content not."""
    statements = (
        "UPDATE measurements SET epoch = 99",
        "UPDATE measurements SET test_loss = 'text' WHERE epoch = 3",
        "UPDATE states SET bytes = 9223372036854775807",
        "UPDATE states SET key = '../../../outside/canary'",
        "UPDATE states SET sha256 = x'00ff'",
        "DELETE FROM measurements WHERE epoch = 2",
        "UPDATE claims SET owner = '../../outside/canary'",
        "UPDATE pins SET owner = ?",
        "UPDATE measurements SET crc = -1",
        "DROP TABLE pins",
        "CREATE TABLE more (a)",
        "CREATE VIEW v AS SELECT * FROM measurements",
        "CREATE TRIGGER t AFTER INSERT ON claims BEGIN DELETE FROM measurements; END",
        "PRAGMA user_version = 3",
        "VACUUM",
    )
    if not all(path.is_file() for path in index.parent.glob(f"{index.name}*")):
        return  # a pipe in the place of a journal would block SQLite
    try:
        connection = sqlite3.connect(index, isolation_level=None)
        statement = draw.choice(statements)
        text = draw.choice(TEXTS).encode(errors="replace").decode()
        connection.execute(statement, (text,) if "?" in statement else ())
        connection.close()
    except sqlite3.Error:
        pass  # damaged before
