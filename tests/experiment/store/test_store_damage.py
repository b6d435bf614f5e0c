"""One flipped byte anywhere in a store is named, or changes no stored value; and what mends it."""

import os
import random
import shutil
from pathlib import Path

import pytest
from store_samples import contents, copy_of, fill, key_of, measurement, network

from fastwi.errors import UserError
from fastwi.experiment.store import DamagedIndex, Store, rebuild
from fastwi.experiment.store.listing import list_store

FLIPS = 100  # for each of the two stores


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> tuple[Path, dict]:
    """A store that was closed, with its values. Tests must not write to it."""
    directory = tmp_path_factory.mktemp("closed") / "store"
    with Store.open(directory) as store:
        fill(store, range(6))
        store.commit([measurement(n, "recomputed") for n in range(6, 150)], [], [])
        store.export()
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


def flip(directory: Path, draw: random.Random) -> str:
    """Change one byte of one file; say which."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    index = [path for path in files if path.name in ("index.sqlite", "index.sqlite-wal")]
    path = draw.choice(index if draw.random() < 0.6 else files)
    content = bytearray(path.read_bytes())
    place = draw.choice((draw.randrange(len(content)), draw.randrange(min(len(content), 200))))
    change = draw.randrange(1, 256)
    content[place] ^= change
    path.write_bytes(content)
    return f"{path.name} byte {place} ^ {change}"


def is_named(directory: Path) -> bool:
    """Whether damage is reported, in proper lines."""
    try:
        with Store.open(directory, create=False) as store:
            lines = [damage.line() for damage in store.verify()]
    except UserError as error:
        lines = [str(error)]
    assert all("\n" not in line and ";" in line for line in lines)
    return bool(lines)


def values(directory: Path) -> dict:
    with Store.open(directory) as store:
        return contents(store)


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_every_flipped_byte_is_named_or_changes_nothing(kind, request, tmp_path, seed):
    source, held = request.getfixturevalue(kind)
    draw, named = random.Random(seed), 0
    for number in range(FLIPS):
        copy = copy_of(source, tmp_path / str(number))
        what = flip(copy, draw)
        if is_named(copy):
            named += 1
        else:
            assert values(copy) == held, what
        shutil.rmtree(copy)
    assert named > FLIPS // 4


@pytest.mark.parametrize("kind", ["closed", "killed"])
def test_an_unharmed_store_is_whole_and_verify_changes_nothing(kind, request, tmp_path):
    source, held = request.getfixturevalue(kind)
    copy = copy_of(source, tmp_path / "store")
    with Store.open(copy) as store:
        assert store.verify(repair=True) == []
        assert contents(store) == held


@pytest.mark.parametrize("lost", ["nothing", "index", "index and log", "log's start", "table", "card"])
def test_rebuilding_gives_the_same_values(killed, closed, tmp_path, lost):
    source, held = closed if "index" in lost else killed
    copy = copy_of(source, tmp_path / "store")
    if "index" in lost:
        (copy / "index.sqlite").unlink()
        held = held | {"attempts": {}}
    elif lost == "log's start":  # what is only in the log is lost with it, but for the states' files
        with (copy / "index.sqlite-wal").open("r+b") as stream:
            stream.write(b"?")
    elif lost == "table":
        (copy / "metrics.parquet").write_bytes(b"PAR1")
    elif lost == "card":
        (copy / "store.json").unlink()
    assert is_named(copy) == (lost != "nothing")
    rebuild(copy)
    with Store.open(copy) as store:
        assert store.verify() == []
        found = contents(store)
    if lost == "log's start":
        assert found["states"] == held["states"]
        assert set(found["measurements"]) == set(closed[1]["measurements"])
    else:
        assert found == held


def test_rebuilding_leaves_damaged_states_and_rows_out(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    (copy / "index.sqlite").unlink()
    with Store.open(closed[0]) as store:
        path = copy / store.places.state(key_of(3)).relative_to(closed[0])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert rebuild(copy).damaged_states == 1
    with Store.open(copy) as store:
        assert store.verify() == []
        assert key_of(3) not in store.states() | {state for state, _ in store.measurements()}
        assert len(store.measurements()) == 154


def test_rebuilding_can_be_cut_off_before_its_last_step(killed, tmp_path, monkeypatch):
    copy = copy_of(killed[0], tmp_path / "store")

    def killed_here(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastwi.experiment.store.rebuilding._move_away", killed_here)
    with pytest.raises(KeyboardInterrupt):
        rebuild(copy)
    monkeypatch.undo()
    with pytest.raises(DamagedIndex, match="store rebuild"):
        Store.open(copy)
    rebuild(copy)
    assert values(copy) == killed[1]


@pytest.mark.parametrize("table", ["whole", "damaged"])
def test_rebuilding_can_be_cut_off_before_the_export(closed, tmp_path, monkeypatch, table):
    """What is left of metrics.parquet is no damage then; it is exported anew in its time."""
    copy = copy_of(closed[0], tmp_path / "store")
    if table == "damaged":
        (copy / "metrics.parquet").write_bytes(b"PAR1")

    def killed_here(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastwi.experiment.store.rebuilding.export", killed_here)
    with pytest.raises(KeyboardInterrupt):
        rebuild(copy)
    monkeypatch.undo()
    with Store.open(copy) as store:
        assert store.verify() == []
        assert contents(store) == closed[1]
    rebuild(copy)
    assert values(copy) == values(closed[0])


def test_rebuilding_needs_the_store_for_itself(closed, tmp_path):
    copy = copy_of(closed[0], tmp_path / "store")
    with Store.open(copy) as store:
        with pytest.raises(UserError, match="other processes have the store open"):
            rebuild(copy)
        assert contents(store) == closed[1]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no store"):
        rebuild(tmp_path / "other")


def test_repair_has_states_trained_again_rows_deleted_and_the_table_exported(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        store.places.state(key_of(1)).unlink()
        store.places.state(key_of(2)).write_bytes(store.places.state(key_of(3)).read_bytes())
        store.places.metrics.write_bytes(store.places.metrics.read_bytes()[:-1])
        with store.database.writing() as connection:
            connection.execute("UPDATE measurements SET epoch = 99 WHERE state = ?", (key_of(4),))
        with pytest.raises(DamagedIndex, match="verify --repair"):
            store.measurements()
        found = store.verify(repair=True)
        assert len(found) == 5
        assert store.verify() == []
        assert store.states() == {key_of(n) for n in (0, 3, 4, 5)}
        assert not {key_of(n) for n in (1, 2, 4)} & {state for state, _ in store.measurements()}


def test_rows_that_vanish_are_missed(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        with store.database.writing() as connection:
            connection.execute("DROP TRIGGER states_delete")
            connection.execute("DELETE FROM states WHERE key = ?", (key_of(1),))
        assert any("not a store's" in damage.what for damage in store.verify())
    with Store.open(copy_of(closed[0], tmp_path / "other")) as store:
        with store.database.writing() as connection:
            connection.execute("UPDATE tallies SET count = count + 1 WHERE name = 'measurements'")
        found = store.verify()
        assert ["tally" in damage.what for damage in found] == [True]
        assert "rebuild" in found[0].mend


def test_files_that_no_row_names_are_no_damage(closed, tmp_path):
    with Store.open(copy_of(closed[0], tmp_path / "store")) as store:
        store.write_state(key_of(77), network(77))
        (store.places.states / "note.txt").write_text("mine")
        assert store.verify() == []
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
        os.mkfifo(store.places.owner("pipe"))
        (tmp_path / "outside").write_text("unchanged")
        store.places.owner("link").symlink_to(tmp_path / "outside")
        lines = [damage.line() for damage in store.verify()]
        assert len(lines) == 2
        assert all("not a regular file" in line for line in lines)
        assert list_store(store.database).claims == 0
        store.gc()
        assert (tmp_path / "outside").read_text() == "unchanged"
