"""`python -m fastwi.store`: what it shows and returns; and the places where no store can be."""

import json
import os
import sqlite3
import tempfile
from pathlib import Path

import pytest
from commands import refused
from store_samples import SPECIAL, contents, fill, key_of, measurement

from fastwi.errors import UserError
from fastwi.experiment.store import DamagedIndex, Measurement, Store
from fastwi.experiment.store.index import CLAIMS, sealed
from fastwi.experiment.store.repair import export, verify
from fastwi.store import main


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


def shown(capsys, status: int, *argv: object) -> str:
    assert main(list(map(str, argv))) == status
    return capsys.readouterr().out


def test_ls(store, capsys):
    fill(store, range(8))
    store.keep([key_of(2)])
    store.commit([Measurement("zz", "own", 9, 0.5, 0.1, 1.0, 50.0, 7200.0)], [], [])
    with store.owner() as owner:
        owner.claim([("aa", "own"), ("bb", "own")])
        owner.pin([key_of(1)])
        with store.writing() as transaction:
            transaction.add(CLAIMS, [sealed("cc", "own", "gone")])  # of a dead process
        text = shown(capsys, 0, "ls", store.directory)
        listing = json.loads(shown(capsys, 0, "ls", store.directory, "--json"))
    assert "; 1 claims and pins and 0 locks of dead" in shown(capsys, 0, "gc", store.directory)
    for words in ("8 states", "17 measurements", " 2.00\n", f"{os.getpid()}: 2 claims, 1 states pinned"):
        assert words in text
    assert (listing["claims"], listing["attempts"], len(listing["owners"])) == (2, 18, 1)
    assert listing["state_bytes"] == sum(path.stat().st_size for path in store.places.states.rglob("*.safetensors"))
    sums = ("epoch", "treatment", "measurements", "trained", "states")
    first, second, *_, last = (tuple(group[name] for name in sums) for group in listing["groups"])
    assert (first, second) == ((0, "own", 2, 2, 2), (0, "recomputed", 2, 0, 0))  # numbers 0 and 7 are at epoch 0
    assert (*last, listing["groups"][-1]["seconds"]) == (9, "own", 1, 1, 0, 7200)


def test_du_adds_up(store, capsys):
    fill(store, range(3))
    export(store)
    store.close()
    (store.directory / "damaged").mkdir()
    (store.directory / "damaged" / "x").write_bytes(bytes(10240))
    (store.directory / ".metrics.parquet.x.tmp").write_bytes(bytes(7))
    sizes = json.loads(shown(capsys, 0, "du", store.directory, "--json"))["bytes"]
    assert sizes.pop("total") == sum(sizes.values())
    assert sizes == {
        "damaged": 10240, "temporary": 7, "index": store.places.index.stat().st_size,
        "other": store.places.card.stat().st_size,  # the locks are empty
        "states": sum(path.stat().st_size for path in store.places.states.rglob("*.safetensors")),
        "metrics": store.places.metrics.stat().st_size,
    }  # fmt: skip
    assert "10,240    10.0 KiB  damaged\n" in shown(capsys, 0, "du", store.directory)


def test_verify_and_its_repair(store, capsys):
    fill(store, range(3))
    assert "3 states" in shown(capsys, 0, "verify", store.directory)
    looked_at = json.loads(shown(capsys, 0, "verify", store.directory, "--json"))
    size = sum(path.stat().st_size for path in store.places.states.rglob("*.safetensors"))
    assert (looked_at["states"], looked_at["bytes"]) == (3, size)
    export(store)
    store.places.state(key_of(1)).write_bytes(b"x")
    lines = shown(capsys, 1, "verify", store.directory).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{store.places.state(key_of(1))}: 1 bytes, not ")
    assert "verify --repair" in lines[0]
    assert "1 damaged" in lines[1]
    assert json.loads(shown(capsys, 1, "verify", store.directory, "--json"))["damage"] == lines[:1]
    assert "trains it again" in shown(capsys, 1, "verify", store.directory, "--repair")
    (line,) = shown(capsys, 0, "verify", store.directory).splitlines()  # the table was exported again, too
    assert "all whole" in line
    aside = sum(
        path.stat().st_size for path in store.places.damaged.iterdir()
    )  # the state, and the table with its rows
    freed = json.loads(shown(capsys, 0, "gc", store.directory, "--json"))
    assert freed["bytes"] == freed["damaged"] == aside > 1
    assert not list(store.places.damaged.iterdir())


def test_rebuild_fixes_a_broken_index(store, capsys):
    fill(store, range(3))
    export(store)
    held = contents(store)["measurements"]
    store.close()
    store.places.index.write_bytes(b"no database" * 1000)
    lines = shown(capsys, 1, "verify", store.directory).splitlines()
    assert f"python -m fastwi.store rebuild {store.directory}" in lines[0]
    assert len(lines) == 2
    for action in ("ls", "du", "gc"):
        assert f"python -m fastwi.store rebuild {store.directory}" in refused(
            main, capsys, [action, str(store.directory)]
        )
    assert "6 measurements, 3 states" in shown(capsys, 0, "rebuild", store.directory)
    assert contents(store)["measurements"] == held


def test_bad_use(store, tmp_path, capsys, monkeypatch):
    for argv in ([], ["look"], ["ls", "--repair"], ["ls", "a", "b"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert "index.sqlite" not in refused(main, capsys, ["ls", "absent"])
    assert not (tmp_path / "absent").exists()
    assert "store: 0 states" in shown(capsys, 0, "ls")  # ./store


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"thesis.tex": "mine"}, "thesis.tex"),
        ({}, "no store there"),
        ({"store.json": '{"format": "fastwi.store", "version": 2}'}, "version 2, this fastwi reads 1"),
        ({"store.json": '{"format": "fastwi.store", "version": true}'}, "version True"),
        *(({"store.json": text}, "rebuild") for text in ("{}", "[]", "", '{"format": "other", "version": 1}')),
    ],
)
def test_directories_that_are_not_a_store(tmp_path, capsys, files, names):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert names in refused(main, capsys, ["verify", str(tmp_path)])
    if files:
        with pytest.raises(UserError, match=names):
            Store.open(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_file_in_the_place_of_a_store(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            Store.open(path)


def test_a_full_disk_is_one_line_and_loses_nothing(store):
    fill(store, range(3))
    held = contents(store)
    with store.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match="no space left"):
        store.commit([Measurement(f"{n:x}" * 40, "own", 1, *SPECIAL[:5]) for n in range(999)], [], [])
    assert contents(store) == held
    store.close()
    store.commit([measurement(9)], [], [])
    assert verify(store).damage == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("kind", ["to read only", "hidden", "new"])
def test_a_directory_of_another_user_is_refused_by_name(kind):
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in a directory that others may not enter
        directory = Path(name, "store")
        with Store.open(directory) as store:
            fill(store, range(1))
        directory.chmod(0o700 if kind == "hidden" else 0o755)
        directory.parent.chmod(0o755)
        before = sorted(directory.iterdir())
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("this root cannot become another user")
        try:
            with pytest.raises(UserError, match="ermission denied") as refusal:
                Store.open(Path(name, "another") if kind == "new" else directory)
        finally:
            os.seteuid(0)
        assert str(refusal.value).startswith(name)
        assert sorted(directory.iterdir()) == before


def test_a_busy_index_is_one_line(store, monkeypatch):
    store.close()
    monkeypatch.setattr("fastwi.experiment.store.index.BUSY_SECONDS", 0.05)
    store.states()
    blocker = sqlite3.connect(store.places.index, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="busy") as refusal:
        store.commit([measurement(1)], [], [])
    assert not isinstance(refusal.value, DamagedIndex)
    blocker.close()
    store.commit([measurement(1)], [], [])
