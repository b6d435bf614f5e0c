"""Damage anywhere in a store is named, or costs work and never a value; and what fixes it."""

import dataclasses
import itertools
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
from store_samples import contents, copy_of, fill, flip, key_of, measurement, network, written

from fastwi.errors import UserError
from fastwi.experiment.store import DamagedIndex, Store, rebuild
from fastwi.experiment.store.index import MEASUREMENTS, TABLES, sealed
from fastwi.experiment.store.places import StorePlaces, check_directory
from fastwi.experiment.store.repair import export, read_table, verify
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.store.store import set_aside
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
    """The same as a killed process leaves it: with half of a transaction, and the journal that undoes it."""
    base = tmp_path_factory.mktemp("killed")
    with Store.open(copy_of(closed[0], base / "live")) as store, store.writing() as transaction:
        transaction.execute("PRAGMA cache_size = 1")
        transaction.add(MEASUREMENTS, [sealed(*measurement(n).columns()) for n in range(150, 400)])
        copy_of(base / "live", base / "store")
    assert (base / "store" / "index.sqlite-journal").stat().st_size > 1000
    assert (base / "store" / "index.sqlite").read_bytes() != (closed[0] / "index.sqlite").read_bytes()
    return base / "store", closed[1]


def flipped(directory: Path, draw: random.Random) -> str:
    """Change one byte of one file; say which."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    index = [path for path in files if path.name.startswith("index.sqlite")]
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


def test_a_flipped_byte_is_named_or_changes_no_value(closed, tmp_path, seed):
    draw, named = random.Random(seed), 0
    for number in range(FLIPS):
        copy = copy_of(closed[0], tmp_path / str(number))
        what = flipped(copy, draw)
        if damage(copy):
            named += 1
        else:
            with Store.open(copy) as store:
                store.keep([key_of(0)])
            assert held_by(copy) == closed[1], what
        shutil.rmtree(copy)
    assert named > FLIPS // 4


def test_a_flipped_byte_after_a_kill_is_named_or_changes_no_exported_value(killed, tmp_path, seed):
    """SQLite takes a damaged journal for an unfinished one: rows of the last transaction may be there."""
    draw = random.Random(seed)
    known = killed[1]["measurements"] | {measurement(n).key: measurement(n).columns() for n in range(150, 400)}
    for number in range(FLIPS):
        copy = copy_of(killed[0], tmp_path / str(number))
        what = flipped(copy, draw)
        if not damage(copy):
            found = held_by(copy)
            assert found["states"] == killed[1]["states"], what
            assert killed[1]["measurements"].items() <= found["measurements"].items() <= known.items(), what
        shutil.rmtree(copy)


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_an_unharmed_store_is_whole_and_verify_changes_nothing(kind, request, tmp_path):
    source, held = request.getfixturevalue(kind)
    with Store.open(copy_of(source, tmp_path / "store")) as store:
        assert verify(store, repair=True).damage == []
        assert contents(store) == held


def harmed(directory: Path, lost: str) -> None:
    index = directory / "index.sqlite"
    content = bytearray(index.read_bytes())
    leaves = [start for start in range(4096, len(content), 4096) if content[start] == 10]  # of tables with keys
    page = max(leaves, key=lambda start: content[start + 4])
    if lost in ("index", "index, empty"):
        index.unlink()
        if "empty" in lost:
            index.touch()
    elif lost == "row":  # which no row's checksum can find
        (rows,) = struct.unpack_from(">H", content, page + 3)
        struct.pack_into(">H", content, page + 3, rows - 1)
        index.write_bytes(content)
    elif lost == "order":
        content[page + 8 : page + 12] = content[page + 10 : page + 12] + content[page + 8 : page + 10]
        index.write_bytes(content)
    elif lost == "header":
        index.write_bytes(b"no database" + content[11:])
    elif lost == "table":
        (directory / "metrics.parquet").write_bytes(b"PAR1")
    elif lost == "card":
        (directory / "store.json").unlink()


@pytest.mark.parametrize("byte", [18, 19])
def test_a_damaged_version_in_the_header_of_the_index_is_damage(closed, tmp_path, byte):
    copy = copy_of(closed[0], tmp_path / "store")
    flip(copy / "index.sqlite", byte, 4)
    assert "store rebuild" in damage(copy)[0]
    with pytest.raises(DamagedIndex, match="store rebuild"), Store.open(copy) as store:
        store.keep([key_of(0)])
    rebuild(copy)
    assert damage(copy) == []
    assert held_by(copy)["measurements"] == closed[1]["measurements"]


@pytest.mark.parametrize(
    ("lost", "cut_off"),
    [
        *((each, "") for each in ("nothing", "index, empty", "row", "order", "card")),
        *itertools.product(("index", "header", "table"), ("", "_check_files", "set_aside", "export")),
        ("index", "all set aside"),
        ("header", "all set aside"),
    ],
)
def test_rebuilding_gives_the_same_values_though_it_was_cut_off(closed, tmp_path, monkeypatch, lost, cut_off):
    def then_cut_off(places: StorePlaces, path: Path) -> None:
        set_aside(places, path)
        1 / (path != places.metrics)

    copy, held = copy_of(closed[0], tmp_path / "store"), closed[1]
    harmed(copy, lost)
    assert bool(damage(copy)) == (lost != "nothing")
    if cut_off:
        # After the old index and metrics.parquet were set aside, the new index is whole.
        name, cut = ("set_aside", then_cut_off) if cut_off == "all set aside" else (cut_off, lambda *_: 1 / 0)
        with monkeypatch.context() as patch:
            patch.setattr(f"fastwi.experiment.store.repair.{name}", cut)
            with pytest.raises(ZeroDivisionError):
                rebuild(copy)
        assert damage(copy) or cut_off == "export"
    counts = rebuild(copy)
    assert (lost, cut_off) != ("table", "") or counts["damaged_rows"] == 1
    assert damage(copy) == []
    found = held_by(copy)
    if "index" in lost or lost in ("row", "order", "header"):
        assert (found["states"], found["measurements"]) == (held["states"], held["measurements"])
    else:
        assert found == held


@pytest.mark.parametrize("lost", ["index", "index, empty"])
def test_a_lost_index_of_a_store_that_was_never_exported_is_damage(tmp_path, lost):
    with Store.open(tmp_path / "store") as store:
        fill(store, range(2))
        states = contents(store)["states"]
    harmed(store.directory, lost)
    assert "store rebuild" in damage(store.directory)[0]
    with pytest.raises(DamagedIndex, match="store rebuild"):  # or all would be trained again without a word
        Store.open(store.directory)
    rebuild(store.directory)
    assert held_by(store.directory)["states"] == states


def test_rows_on_both_sides_of_a_broken_page_are_kept(closed, tmp_path):
    """SQLite reads up to the page from either end."""
    copy, there = copy_of(closed[0], tmp_path / "store"), sorted(closed[1]["measurements"])
    (copy / "metrics.parquet").unlink()
    content = bytearray((copy / "index.sqlite").read_bytes())
    starts = (content.index(state.encode()) // 4096 * 4096 for state, _ in there[70:])
    page = next(start for start in starts if content[start] == 10)  # a leaf
    content[page : page + 4096] = bytes(4096)
    (copy / "index.sqlite").write_bytes(content)
    rebuild(copy)
    found = held_by(copy)["measurements"].keys()
    assert {there[0], there[-1]} < found < set(there)
    assert len(found) > len(there) // 2


def test_a_state_that_another_process_drops_meanwhile_is_no_damage(closed, tmp_path, monkeypatch):
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store, Store.open(copy) as other:

        def late(places, file):
            other.drop_states([file.key])
            return damage_of(places, file)

        monkeypatch.setattr("fastwi.experiment.store.repair.damage_of", late)
        assert verify(store).damage == []
        assert store.states() == set()


@pytest.mark.parametrize("lost", ["index.sqlite", "metrics.parquet", ""])
def test_rebuilding_leaves_damaged_states_and_rows_out(closed, tmp_path, lost):
    """Without an index a state is compared with the checksums in its file, with one with the index's SHA-256."""
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store, store.writing() as transaction:
        transaction.execute("UPDATE measurements SET epoch = 99 WHERE state = ?", (key_of(4),))
        flip(store.places.state(key_of(3)), -1)
    if lost:
        (copy / lost).unlink()
    found = rebuild(copy)
    assert (found["damaged_states"], found["damaged_rows"]) == (1, 0 if lost == "index.sqlite" else 2)
    assert damage(copy) == []
    with Store.open(copy) as store:
        assert store.states() == {key_of(n) for n in (0, 1, 2, 4, 5)}
        measured = {state for state, _ in store.measurements()}
        assert len(store.measurements()) == (152 if lost == "metrics.parquet" else 154)
    assert key_of(3) not in measured
    assert (key_of(4) in measured) == (lost != "metrics.parquet")  # trained again, else


def test_rebuilding_leaves_out_a_file_of_several_networks(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    network(0).clone_rows([0, 0]).save(StorePlaces(copy).state(key_of(0)))
    (copy / "index.sqlite").unlink()
    assert rebuild(copy)["damaged_states"] == 1
    with Store.open(copy) as store:
        assert store.states() == {key_of(n) for n in range(1, 6)}


def test_rebuilding_prefers_the_index_where_the_table_has_another_row(closed, tmp_path):
    """As of a measurement that was forgotten, and made again since the last export: its seconds are others."""
    copy, first = copy_of(closed[0], tmp_path / "store"), measurement(1)
    with Store.open(copy) as store:
        with store.writing() as transaction:
            transaction.add(MEASUREMENTS, [sealed(*dataclasses.replace(first, seconds=9.0).columns())])
        held = contents(store)
    rebuild(copy)
    assert held_by(copy) == held
    assert held["measurements"][first.key] != closed[1]["measurements"][first.key]


def test_rebuilding_needs_the_store_for_itself(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store:
        with pytest.raises(UserError, match="other processes"):
            rebuild(copy)
        assert contents(store) == closed[1]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no store"):
        rebuild(tmp_path / "other")


def test_an_index_that_another_process_is_making_is_not_lost(closed, tmp_path, monkeypatch):
    places = StorePlaces(tmp_path / "store")
    places.directory.mkdir()
    (places.directory / ".store.json.0a1b2c3d.tmp").touch()  # it may have got no further
    check_directory(places, create=True)
    exists = Path.exists

    def made_meanwhile(path: Path) -> bool:
        found = exists(path)
        if path == places.index and not found:
            shutil.copytree(closed[0], places.directory, dirs_exist_ok=True)
        return found

    monkeypatch.setattr(Path, "exists", made_meanwhile)
    with Store(places) as store:
        assert contents(store) == closed[1]


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


def test_a_table_of_other_rows_than_the_index_is_noted_and_exported_again(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        earlier = store.places.metrics.read_bytes()
        store.commit([measurement(500)], [], [])
        for content in (earlier, None):
            store.places.metrics.unlink() if content is None else store.places.metrics.write_bytes(content)
            found = verify(store)
            assert (found.damage, len(found.notes)) == ([], 1)
            assert str(store.places.metrics) in found.notes[0]
            assert ("missing" in found.notes[0]) == (content is None)
            assert len(verify(store, repair=True).notes) == 1
            assert (verify(store).damage, verify(store).notes) == ([], [])
            assert len(list(read_table(store.places))) == 157


def test_measurements_that_the_index_lacks_are_damage_and_rebuilding_takes_them_in(closed, tmp_path):
    """An index of yesterday, put back: some of its states are gone by now, others are not in it yet."""
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store:
        fill(store, range(200, 203))
        store.drop_states([key_of(0)])
        export(store)
        held = contents(store)
    table = (copy / "metrics.parquet").read_bytes()
    shutil.copy(closed[0] / "index.sqlite", copy)
    with Store.open(copy) as store:
        for repair in (True, False):
            (line,) = verify(store, repair).damage
            assert f"{store.places.metrics}: measurements that the index lacks: 6; `rebuild`" in line
    assert (copy / "metrics.parquet").read_bytes() == table
    rebuild(copy)
    assert damage(copy) == []
    assert held_by(copy) == held | {"attempts": closed[1]["attempts"]}


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?c", "{a,b}"])
def test_the_name_of_a_store_is_no_pattern(closed, tmp_path, name):
    """Polars takes these for the names of other files, which may be there."""
    copy = copy_of(closed[0], tmp_path / name)
    with Store.open(tmp_path / "abc") as other:
        fill(other, range(160, 163))
        export(other)
    with Store.open(copy) as store:
        assert not verify(store).damage
    (copy / "index.sqlite").unlink()
    rebuild(copy)
    with Store.open(copy) as store:
        assert contents(store) == closed[1] | {"attempts": {}}


def test_of_two_exports_at_once_the_later_measurements_stay(tmp_path, monkeypatch):
    """The first is held up after it has read the index, until the second has ended or waits for it."""
    write, wrote, begun = polars.DataFrame.write_parquet, threading.Event(), threading.Event()

    def slow(*args, **more):
        if not begun.is_set():
            begun.set()
            wrote.wait(1)
        write(*args, **more)

    monkeypatch.setattr(polars.DataFrame, "write_parquet", slow)
    with Store.open(tmp_path / "s") as store, Store.open(tmp_path / "s") as other, ThreadPoolExecutor(2) as pool:
        store.commit([measurement(1)], [], [])
        first = pool.submit(export, store)
        assert begun.wait(60)
        second = pool.submit(lambda: (other.commit([measurement(2)], [], []), export(other), wrote.set()))
        first.result()
        second.result()
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
        store.keep([key_of(0)])
        with store.writing() as transaction:
            transaction.execute(f"UPDATE {table} SET crc = crc + 1")
        # All of its rows, and one that is named.
        uses = {
            "measurements": [store.measurements, lambda: store.measurements([(key_of(0), "own")])],
            "states": [store.states, lambda: store.state_files([key_of(0)])],
            "claims": [lambda: store.look((), ()), lambda: owner.release([("aa", "own")])],
            "pins": [lambda: store.drop_states([key_of(0)]), lambda: store.kept([key_of(0)])],
            "attempts": [store.attempts],
        }
        for use in (*uses[table], lambda: listing(store)):
            with pytest.raises(DamagedIndex, match=f"{table} is damaged.*store rebuild"):
                use()
        assert [line.count("rebuild") for line in verify(store).damage] == [1]


def test_an_index_of_an_earlier_fastwi_is_used_as_it_is(closed, tmp_path):
    """It has a write-ahead log, in which a killed process left its last rows, types, a trigger and a table more."""
    live, copy = copy_of(closed[0], tmp_path / "live"), tmp_path / "store"
    connection = sqlite3.connect(live / "index.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    rows = connection.execute("SELECT * FROM measurements").fetchall()
    connection.execute("DROP TABLE measurements")
    connection.executescript(
        """CREATE TABLE measurements (state TEXT NOT NULL, treatment TEXT NOT NULL, epoch INTEGER NOT NULL,
        train_loss BLOB, learning_rate BLOB, test_loss BLOB NOT NULL, test_accuracy BLOB NOT NULL,
        seconds BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (state, treatment)) WITHOUT ROWID;
        CREATE TABLE tallies (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
        INSERT INTO tallies VALUES ('measurements', 0);
        CREATE TRIGGER measurements_insert AFTER INSERT ON measurements BEGIN
        UPDATE tallies SET count = count + 1 WHERE name = 'measurements'; END;"""
    )
    connection.executemany(f"INSERT INTO measurements VALUES ({', '.join('?' * 9)})", rows)
    connection.commit()
    copy_of(live, copy)
    connection.close()
    assert (copy / "index.sqlite-wal").stat().st_size > 10_000
    assert damage(copy) == []
    assert held_by(copy) == closed[1]
    with Store.open(copy) as store:
        store.commit([measurement(999)], [], [])
        assert len(store.measurements()) == len(rows) + 1
        assert verify(store).damage == []
    assert not (copy / "index.sqlite-wal").exists()


def with_log(closed: tuple[Path, dict], directory: Path) -> sqlite3.Connection:
    """A copy of the store, and another process's part in it: a connection of an earlier version, with its log."""
    copy_of(closed[0], directory)
    connection = sqlite3.connect(directory / "index.sqlite", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("SELECT count(*) FROM states").fetchall()
    return connection


def test_a_process_of_an_earlier_fastwi_is_waited_for(closed, tmp_path, monkeypatch):
    connection = with_log(closed, tmp_path / "store")
    tried = threading.Event()
    monkeypatch.setattr("fastwi.experiment.store.index.time.sleep", lambda _: tried.set())
    with ThreadPoolExecutor(4) as pool:  # four that end the log at once
        opened = [pool.submit(held_by, tmp_path / "store") for _ in range(4)]
        assert tried.wait(600)
        connection.close()
        assert [each.result() for each in opened] == [closed[1]] * 4


def test_a_process_of_an_earlier_fastwi_that_stays_is_named_in_one_line(closed, tmp_path, monkeypatch):
    connection = with_log(closed, tmp_path / "store")
    monkeypatch.setattr("fastwi.experiment.store.index.BUSY_SECONDS", 0.05)
    with pytest.raises(UserError, match="busy by other processes") as refusal:
        held_by(tmp_path / "store")
    assert not isinstance(refusal.value, DamagedIndex)
    connection.close()
    assert held_by(tmp_path / "store") == closed[1]


def test_files_that_no_row_names_are_no_damage(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        written(store, 77)
        (store.places.states / "note.txt").write_text("mine")
        (store.places.states / f"{key_of(78)}.safetensors").write_text("not where a state of this name is")
        found = verify(store)
        assert found.damage == []
        (note,) = found.notes
        assert "does not have: 1;" in note
        assert "rebuild" in note
        store.gc()
        assert (store.places.states / "note.txt").exists()
        assert contents(store) == closed[1]


@pytest.mark.parametrize(
    "name", ["index.sqlite", "metrics.parquet", "store.json", "index.lock", "turn.lock", "index.sqlite-wal"]
)
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
