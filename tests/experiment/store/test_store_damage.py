"""Damage anywhere in a store is named, or costs work and never a value; and what fixes it."""

import os
import random
import shutil
import sqlite3
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars
import pytest
from store_samples import contents, copy_of, fill, flip, key_of, measurement, written

from fastwi.errors import UserError
from fastwi.experiment.store import DamagedIndex, Store, rebuild
from fastwi.experiment.store.index import MEASUREMENTS, TABLES, sealed
from fastwi.experiment.store.repair import export, read_table, verify
from fastwi.store import listing

FLIPS = 100  # for each of the two stores


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> tuple[Path, dict]:
    """A store that was closed, with its values. Tests must not write to it."""
    directory = tmp_path_factory.mktemp("closed") / "store"
    with Store.open(directory) as store:
        fill(store, range(6))
        store.commit([measurement(n, "recomputed") for n in range(6, 150)], [], [])
        export(store)
        held = contents(store)
    return directory, held


@pytest.fixture(scope="module")
def killed(closed, tmp_path_factory) -> tuple[Path, dict]:
    """The same as a killed process leaves it: its last transactions are in the log."""
    base = tmp_path_factory.mktemp("killed")
    with Store.open(copy_of(closed[0], base / "live")) as store:
        fill(store, range(150, 153))
        store.drop_states([key_of(0)])
        held = contents(store)
        copy_of(base / "live", base / "store")
    assert (base / "store" / "index.sqlite-wal").stat().st_size > 10_000
    return base / "store", held


def flipped(directory: Path, draw: random.Random) -> str:
    """Change one byte of one file; say which."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    index = [path for path in files if path.name in ("index.sqlite", "index.sqlite-wal")]
    path = draw.choice(index if draw.random() < 0.6 else files)
    size = path.stat().st_size
    place, change = draw.choice((draw.randrange(size), draw.randrange(min(size, 200)))), draw.randrange(1, 256)
    flip(path, place, change)
    return f"{path.name} byte {place} ^ {change}"


def damage(directory: Path) -> list[str]:
    """The damage that is reported, in proper lines."""
    try:
        with Store.open(directory, create=False) as store:
            lines = verify(store).damage
    except UserError as error:
        lines = [str(error)]
    assert all("\n" not in line and ";" in line for line in lines)
    return lines


def held_by(directory: Path) -> dict:
    with Store.open(directory) as store:
        return contents(store)


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_a_flipped_byte_is_named_or_changes_no_value(kind, request, tmp_path, seed):
    source, held = request.getfixturevalue(kind)
    draw, named = random.Random(seed), 0
    for number in range(FLIPS):
        copy = copy_of(source, tmp_path / str(number))
        what = flipped(copy, draw)
        if damage(copy):
            named += 1
        else:
            assert held_by(copy) == held, what
        shutil.rmtree(copy)
    assert named > FLIPS // 4


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_an_unharmed_store_is_whole_and_verify_changes_nothing(kind, request, tmp_path):
    source, held = request.getfixturevalue(kind)
    with Store.open(copy_of(source, tmp_path / "store")) as store:
        assert verify(store, repair=True).damage == []
        assert contents(store) == held


@pytest.mark.parametrize("lost", ["nothing", "index", "log", "index, empty", "table", "card"])
def test_rebuilding_gives_the_same_values(killed, closed, tmp_path, lost):
    source, held = closed if "index" in lost else killed
    copy = copy_of(source, tmp_path / "store")
    if "index" in lost:
        (copy / "index.sqlite").unlink()
        if "empty" in lost:
            (copy / "index.sqlite").touch()
        held = held | {"attempts": {}}
    elif lost == "log":  # what is only in the log is lost with it, but for the states' files
        flip(copy / "index.sqlite-wal", 40)
    elif lost == "table":
        (copy / "metrics.parquet").write_bytes(b"PAR1")
    elif lost == "card":
        (copy / "store.json").unlink()
    assert bool(damage(copy)) == (lost != "nothing")
    rebuild(copy)
    assert damage(copy) == []
    found = held_by(copy)
    if lost == "log":
        assert found["states"] == held["states"]
        assert found["measurements"] == closed[1]["measurements"]
    else:
        assert found == held


def test_rebuilding_leaves_damaged_states_and_rows_out(closed, tmp_path):
    """Without an index a state is compared with the checksums in its file, with one with the index's SHA-256."""
    for lost in (True, False):
        copy = copy_of(closed[0], tmp_path / f"store {lost}")
        with Store.open(copy) as store, store.writing() as transaction:
            transaction.execute("UPDATE measurements SET epoch = 99 WHERE state = ?", (key_of(4),))
            flip(store.places.state(key_of(3)), -1)
            store.places.metrics.unlink() if not lost else None
        if lost:
            (copy / "index.sqlite").unlink()
        found = rebuild(copy)
        assert (found["damaged_states"], found["damaged_rows"]) == (1, 0 if lost else 2)
        assert damage(copy) == []
        with Store.open(copy) as store:
            assert store.states() == {key_of(n) for n in (0, 1, 2, 4, 5)}
            measured = {state for state, _ in store.measurements()}
            assert len(store.measurements()) == (154 if lost else 152)
        assert key_of(3) not in measured
        assert (key_of(4) in measured) == lost  # trained again, else


def test_a_damaged_log_is_refused_until_a_rebuild_ends(killed, tmp_path, seed):
    """In the header, and anywhere in the frames: SQLite would drop the transactions behind, without an error."""
    draw = random.Random(seed)
    size = (killed[0] / "index.sqlite-wal").stat().st_size
    last = size - 4096 - 24  # the last frame's header
    places = [
        0,
        7,
        10,
        17,
        25,
        32,
        41,
        49,
        *range(last + 8, last + 24),
        *(draw.randrange(56, size) for _ in range(40)),
    ]
    for number, place in enumerate(places):
        copy = copy_of(killed[0], tmp_path / str(number))
        flip(copy / "index.sqlite-wal", place, 1 << draw.randrange(8))
        for _ in range(2):
            with pytest.raises(DamagedIndex, match=r"index\.sqlite-wal: damaged.*store rebuild"):
                Store.open(copy)


def test_a_cut_off_rebuild_of_a_damaged_log_is_noticed(killed, tmp_path, monkeypatch):
    copy = copy_of(killed[0], tmp_path / "store")
    flip(copy / "index.sqlite-wal", 60)
    monkeypatch.setattr("fastwi.experiment.store.repair._check_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rebuild(copy)
    monkeypatch.undo()
    assert damage(copy)
    rebuild(copy)
    assert damage(copy) == []


def test_frames_from_before_a_checkpoint_and_an_unfinished_frame_are_no_damage(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "live")) as store:
        for number in range(30):
            store.commit([measurement(200 + number)], [], [])
        log = store.places.wal.read_bytes()
        with store.reading() as transaction:
            transaction.execute("COMMIT")
            transaction.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            transaction.execute("BEGIN")
        store.commit([measurement(300)], [], [])
        held = contents(store)
        copy = copy_of(store.directory, tmp_path / "killed")
    new = (copy / "index.sqlite-wal").read_bytes()
    assert len(new) < len(log)
    for number, end in enumerate((log[len(new) :], new[32:-9])):
        other = copy_of(copy, tmp_path / str(number))
        (other / "index.sqlite-wal").write_bytes(new + end)
        assert (damage(other), held_by(other)) == ([], held)


@pytest.mark.parametrize("byte", [18, 19])
def test_a_damaged_version_in_the_header_of_the_index_is_damage(closed, tmp_path, byte):
    copy = copy_of(closed[0], tmp_path / "store")
    flip(copy / "index.sqlite", byte, 4)
    assert "store rebuild" in damage(copy)[0]
    rebuild(copy)
    assert damage(copy) == []
    assert held_by(copy)["measurements"] == closed[1]["measurements"]


@pytest.mark.parametrize("step", ["set_aside", "export"])
@pytest.mark.parametrize("table", ["whole", "damaged"])
def test_rebuilding_can_be_cut_off(killed, tmp_path, monkeypatch, step, table):
    copy = copy_of(killed[0], tmp_path / "store")
    if table == "damaged":
        (copy / "metrics.parquet").write_bytes(b"PAR1")

    def killed_here(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fastwi.experiment.store.repair.{step}", killed_here)
    with pytest.raises(KeyboardInterrupt):
        rebuild(copy)
    monkeypatch.undo()
    if step == "set_aside" and table == "whole":
        with pytest.raises(DamagedIndex, match="store rebuild"):
            Store.open(copy)
    rebuild(copy)
    assert damage(copy) == []
    assert held_by(copy) == killed[1]


def test_rebuilding_needs_the_store_for_itself(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store:
        with pytest.raises(UserError, match="other processes have the store open"):
            rebuild(copy)
        assert contents(store) == closed[1]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no store"):
        rebuild(tmp_path / "other")


def test_gc_keeps_the_states_of_an_index_that_was_emptied(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store:
        with store.writing() as transaction:
            for table in TABLES:
                transaction.execute(f"DELETE FROM {table.name}")
        (store.places.damaged).mkdir()
        (store.places.damaged / "x").touch()
        with pytest.raises(UserError, match=r"empty.*store rebuild"):
            store.gc()
        assert (store.places.damaged / "x").exists()
    rebuild(copy)
    assert held_by(copy) == closed[1] | {"attempts": {}}


@pytest.mark.parametrize("harm", ["deleted", "of another store", "an earlier one"])
def test_another_table_than_the_one_exported_last_is_damage(closed, tmp_path, harm):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        earlier = store.places.metrics.read_bytes()
        store.commit([measurement(500)], [], [])
        assert (verify(store).damage, len(verify(store).notes)) == ([], 1)
        export(store)
        assert verify(store) == verify(store, repair=True)
        assert verify(store).notes == []
        if harm == "an earlier one":
            store.places.metrics.write_bytes(earlier)
        else:
            store.places.metrics.unlink()
        if harm == "of another store":
            with Store.open(tmp_path / "other") as other:
                other.commit([measurement(1)], [], [])
                export(other)
                shutil.copy(other.places.metrics, store.places.metrics)
        (line,) = verify(store).damage
        assert line.startswith(str(store.places.metrics))
        assert "verify --repair" in line
        assert len(verify(store, repair=True).damage) == 1
        assert (verify(store).damage, verify(store).notes) == ([], [])
        assert len(list(read_table(store.places))) == 157


def test_of_two_exports_at_once_the_later_measurements_stay(tmp_path, monkeypatch):
    """The first is held up after it has read the index, until the second has ended or waits for it."""
    write, wrote, begun = polars.DataFrame.write_parquet, threading.Event(), threading.Event()

    def slow(frame, path):
        if not begun.is_set():
            begun.set()
            wrote.wait(1)
        write(frame, path)

    monkeypatch.setattr(polars.DataFrame, "write_parquet", slow)
    with Store.open(tmp_path / "s") as store, Store.open(tmp_path / "s") as other, ThreadPoolExecutor(1) as pool:
        store.commit([measurement(1)], [], [])
        first = pool.submit(export, store)
        begun.wait()
        other.commit([measurement(2)], [], [])
        export(other)
        wrote.set()
        first.result()
        assert len(list(read_table(store.places))) == 2


def test_repair_has_states_trained_again_and_the_table_exported(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        store.places.state(key_of(1)).unlink()
        store.places.state(key_of(2)).write_bytes(store.places.state(key_of(3)).read_bytes())
        store.places.metrics.write_bytes(store.places.metrics.read_bytes()[:-1])
        assert len(verify(store, repair=True).damage) == 3
        assert verify(store).damage == []
        assert store.states() == {key_of(n) for n in (0, 3, 4, 5)}
        assert not {key_of(n) for n in (1, 2)} & {state for state, _ in store.measurements()}


@pytest.mark.parametrize("table", ["measurements", "states", "claims", "pins", "attempts"])
def test_a_row_that_was_changed_is_refused_wherever_it_is_read(closed, tmp_path, table):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store, store.owner() as owner:
        owner.claim([("aa", "own")])
        owner.pin([key_of(0)])
        with store.writing() as transaction:
            transaction.execute(f"UPDATE {table} SET crc = crc + 1")
        uses = {
            "measurements": store.measurements, "states": store.states, "claims": lambda: store.look((), ()),
            "pins": lambda: store.drop_states([key_of(0)]), "attempts": store.attempts,
        }  # fmt: skip
        for use in (uses[table], lambda: listing(store)):
            with pytest.raises(DamagedIndex, match=f"{table} is damaged.*store rebuild"):
                use()
        assert [line.count("rebuild") for line in verify(store).damage] == [1]


@pytest.mark.parametrize("harm", ["a row less", "two rows exchanged"])
def test_rows_that_vanish_or_change_places_within_a_page_are_named(closed, tmp_path, harm):
    """What no row's checksum can tell is found by SQLite's integrity check."""
    copy = copy_of(closed[0], tmp_path / "store")
    content = bytearray((copy / "index.sqlite").read_bytes())
    leaves = [start for start in range(4096, len(content), 4096) if content[start] == 10]  # of tables with keys
    page = max(leaves, key=lambda start: content[start + 4])
    (rows,) = struct.unpack_from(">H", content, page + 3)
    if harm == "a row less":
        struct.pack_into(">H", content, page + 3, rows - 1)
    else:
        first, second = page + 8, page + 10
        content[first : first + 2], content[second : second + 2] = (
            content[second : second + 2],
            content[first : first + 2],
        )
    (copy / "index.sqlite").write_bytes(content)
    assert damage(copy)
    rebuild(copy)
    assert damage(copy) == []
    assert held_by(copy)["measurements"] == closed[1]["measurements"]


def test_an_index_of_an_earlier_fastwi_is_used_as_it_is(closed, tmp_path):
    """It has types, triggers and two tables more."""
    copy = copy_of(closed[0], tmp_path / "store")
    with sqlite3.connect(copy / "index.sqlite") as connection:
        rows = connection.execute("SELECT * FROM measurements").fetchall()
        connection.execute("DROP TABLE measurements")
        connection.executescript(
            """CREATE TABLE measurements (state TEXT NOT NULL, treatment TEXT NOT NULL, epoch INTEGER NOT NULL,
            train_loss BLOB, learning_rate BLOB, test_loss BLOB NOT NULL, test_accuracy BLOB NOT NULL,
            seconds BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (state, treatment)) WITHOUT ROWID;
            CREATE TABLE notes (name TEXT NOT NULL, value TEXT NOT NULL, crc INTEGER NOT NULL);
            CREATE TABLE tallies (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
            INSERT INTO tallies VALUES ('measurements', 0);
            CREATE TRIGGER measurements_insert AFTER INSERT ON measurements BEGIN
            UPDATE tallies SET count = count + 1 WHERE name = 'measurements'; END;"""
        )
        connection.executemany(MEASUREMENTS.insertion(), rows)
    connection.close()
    assert damage(copy) == []
    assert held_by(copy) == closed[1]
    with Store.open(copy) as store:
        store.commit([measurement(999)], [], [])
        assert len(store.measurements()) == len(rows) + 1
        assert verify(store).damage == []


def test_files_that_no_row_names_are_no_damage(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        written(store, 77)
        (store.places.states / "note.txt").write_text("mine")
        found = verify(store)
        assert found.damage == []
        (note,) = found.notes
        assert "1 files" in note
        assert "rebuild" in note
        store.gc()
        assert (store.places.states / "note.txt").exists()
        assert contents(store) == closed[1]


@pytest.mark.parametrize("name", ["index.sqlite", "metrics.parquet", "store.json", "index.lock", "index.sqlite-wal"])
@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_what_is_no_plain_file_is_named_and_never_waited_for(closed, tmp_path, name, kind):
    path = copy_of(closed[0], tmp_path / "store") / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    for body in (lambda: Store.open(path.parent, create=False), lambda: rebuild(path.parent)):
        with pytest.raises(UserError, match=f"{name}: not a regular file; remove it"):
            body()
    assert not (tmp_path / "elsewhere").exists()


def test_states_and_owners_that_are_no_plain_files(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        for target, path in (("pipe", store.places.state(key_of(1))), ("/dev/zero", store.places.state(key_of(2)))):
            path.unlink()
            os.mkfifo(path) if target == "pipe" else path.symlink_to(target)
        store.places.owners.mkdir(exist_ok=True)
        os.mkfifo(store.places.owners / "pipe.lock")
        (tmp_path / "outside").write_text("unchanged")
        (store.places.owners / "link.lock").symlink_to(tmp_path / "outside")
        lines = verify(store).damage
        assert len(lines) == 2
        assert all("not a regular file" in line for line in lines)
        assert listing(store)["claims"] == 0
        store.gc()
        assert (tmp_path / "outside").read_text() == "unchanged"


def test_an_owner_whose_file_cannot_be_read_is_taken_for_live(tmp_path):
    """It may be another user's. Better to wait than to do its work twice."""
    task = ("aa", "own")
    with Store.open(tmp_path / "store") as store, store.owner() as owner:
        (store.places.owners / "theirs.lock").symlink_to("theirs.lock")  # to itself: even root cannot open it
        with store.writing() as transaction:
            transaction.execute("INSERT INTO claims VALUES (?, ?, ?, ?)", sealed(*task, "theirs"))
        assert owner.claim([task]) == []
        store.gc()
        (store.places.owners / "theirs.lock").unlink()
        assert owner.claim([task]) == [task]
