"""The store keeps states and measurements to the bit, in transactions, and reports where results disagree."""

import dataclasses
import math
import os
import pickle
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import polars
import pytest
import torch
from begun_stores import claims
from store_samples import bits, contents, fill, flip, key_of, measurement, network, values, written
from torch import nn

import fastwi.experiment.store.store as module
from fastwi.errors import CheckpointError
from fastwi.experiment.store import DamagedState, Measurement, Store, StoredState, read_states, rebuild, write_states
from fastwi.experiment.store.repair import export, read_table, verify
from fastwi.population import Population
from fastwi.sealed import file_sha256

LAYOUT = network(0).layout


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


def columns(store: Store) -> list[tuple]:
    return [m.columns() for m in store.measurements().values()]


def test_measurements_come_back_to_the_bit_from_the_index_and_from_parquet(store, monkeypatch, seed):
    monkeypatch.setattr("fastwi.experiment.store.repair._BATCH", 7)
    draw = random.Random(seed)
    made = [measurement(n) for n in range(40)] + [measurement(n, "recomputed", draw) for n in range(200)]
    made += [measurement(n, "own", draw) for n in range(40, 200)]
    assert store.commit(made, [], []) == []
    assert columns(store) == sorted(m.columns() for m in made)
    export(store)
    store.close()
    store.places.index.unlink()
    rebuild(store.directory)
    assert columns(store) == sorted(m.columns() for m in made)


def test_transactions_are_on_the_disk_when_they_return(store):
    with store.reading() as transaction:
        assert transaction.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_table_is_sorted_and_plain(store):
    export(store)
    assert polars.read_parquet(store.places.metrics).height == 0
    rows = [Measurement("bb", "own", 3, 0.5, 0.1, 1.25, 90.5, 2.0), Measurement("aa", "z", 1, None, None, 2, 3, 4)]
    store.commit(rows, [], [])
    export(store)
    frame = polars.read_parquet(store.places.metrics)
    assert frame.drop("crc").rows() == [("aa", "z", 1, None, None, 2.0, 3.0, 4.0), dataclasses.astuple(rows[0])]


def test_chosen_keys_only(store):
    fill(store, range(6))
    wanted = [(key_of(2), "own"), (key_of(2), "own"), (key_of(3), "recomputed"), (key_of(4), "absent"), ("zz", "own")]
    for more in ([], [(f"{n:08x}", "own") for n in range(1000)]):  # found one by one, or the table is scanned
        assert set(store.measurements(wanted + more)) == {wanted[0], wanted[2]}
    assert store.measurements([wanted[2]]).keys() == {wanted[2]}
    assert store.measurements([]) == {}
    assert store.states() == {key_of(n) for n in range(6)}
    assert store.state_files([key_of(1), "zz"]) == {key_of(1): store.state_files()[key_of(1)]}


def test_the_first_measurement_stays_and_a_different_one_is_named(store):
    first = measurement(1)  # its values include NaN
    assert store.commit([first], [], []) == []
    assert store.commit([first, dataclasses.replace(first, seconds=9.0)], [], []) == []
    others = {"epoch": 5, "train_loss": None, "learning_rate": bits(1), "test_loss": 1.5, "test_accuracy": 12.5}
    for name, value in others.items():
        changed = dataclasses.replace(first, **{name: value})
        assert store.commit([changed, measurement(2)], [], []) == [first.key], name
    zero = dataclasses.replace(first, state="zz", test_loss=0.0)
    assert store.commit([zero, dataclasses.replace(zero, test_loss=-0.0)], [], []) == [zero.key]
    assert sorted(columns(store)) == sorted(m.columns() for m in (first, measurement(2), zero))


def test_what_diverged_is_named_with_its_weights_and_statistics():
    names = "own", "recomputed-0a", "moving-own", "moving-recomputed-0a"
    lines = [Measurement("aa", name, 3, None, None, math.nan, 10.0, 1.0).divergence() for name in names]
    assert ["with recomputed batch-norm statistics" in line for line in lines] == [False, True, False, True]
    assert ["the moving average" in line for line in lines] == [False, False, True, True]
    assert all("network aa diverged" in line and "in epoch 3; no gain" in line for line in lines)
    trained = Measurement("aa", "own", 3, math.inf, 0.1, 1.0, 10.0, 1.0).divergence()
    assert "in epoch 3, at learning rate 0.1; nothing is made of it" in trained


def test_a_failed_commit_changes_nothing(store):
    fill(store, range(3))
    before, task = contents(store), (key_of(9), "own")
    with store.owner() as owner:
        owner.claim([task])
        good, bad = measurement(9), dataclasses.replace(measurement(8), epoch=2**70)  # SQLite has no such number
        with pytest.raises(OverflowError):
            store.commit([good, bad], store.state_files([key_of(0)]).values(), [task])
        assert claims(store) == {task: owner.id}
    before["attempts"][task] = 1
    assert contents(store) == before


def test_many_states_at_once_are_the_same_files_as_one_by_one(store, monkeypatch):
    torch.set_num_threads(4)  # that read
    made = [(key_of(n), network(n)) for n in range(20)]
    single = [written(store, n) for n in range(20)]
    files = [store.places.state(file.key) for file in single]
    before = [path.read_bytes() for path in files]
    assert [file.bytes for file in single] == list(map(len, before))
    for path in files:
        path.unlink()
    flushed = set()
    monkeypatch.setattr("fastwi.experiment.store.states.sync_directory", flushed.add)
    with ThreadPoolExecutor(2) as threads:  # as a sweep's writer does
        halves = list(threads.map(lambda part: write_states(store.directory, part), (made[:10], made[10:])))
    assert halves[0] + halves[1] == single
    assert flushed == {store.directory, store.places.states, *(path.parent for path in files)}
    assert [path.read_bytes() for path in files] == before
    loaded = read_states(store.directory, [*single, single[3]], LAYOUT, "cpu")
    for m, n in enumerate((*range(20), 3)):
        assert values(loaded[m]) == values(made[n][1])
    assert store.states() == set()  # until they are committed


def test_what_is_not_a_state_of_this_network(store):
    torch.set_num_threads(4)  # that read
    files = [written(store, n) for n in range(12)]
    for n in (5, 8):
        flip(store.places.state(key_of(n)), -1)
    with pytest.raises(DamagedState) as refusal:
        read_states(store.directory, files, LAYOUT)
    assert refusal.value.key == key_of(5)  # the first
    (other,) = write_states(store.directory, [("other", Population.from_modules([nn.Linear(2, 2)]))])
    with pytest.raises(CheckpointError, match="another network") as mismatch:
        read_states(store.directory, [files[0], other], LAYOUT)
    assert not isinstance(mismatch.value, DamagedState)
    two = store.places.state("several")
    network(1).clone_rows([0, 0]).save(two)
    with pytest.raises(DamagedState, match="2 members"):
        read_states(store.directory, [StoredState("several", two.stat().st_size, file_sha256(two))], LAYOUT)
    with pytest.raises(ValueError, match="several members"):
        write_states(store.directory, [("abd", network(2)), ("abc", network(1).clone_rows([0, 0]))])
    assert not store.places.state("abd").exists()
    for key in ("", "a", "../x", "a/b", ".ab"):
        with pytest.raises(ValueError, match="not a state's key"):
            write_states(store.directory, [(key, network(1))])


@pytest.mark.parametrize("harm", ["flip", "copy", "cut", "missing"])
def test_a_harmed_state_is_never_used_and_can_be_forgotten(store, harm, seed):
    fill(store, range(3))
    path, other = (store.places.state(key_of(n)) for n in (0, 1))
    assert not store.mark_damaged(key_of(0))  # it is right
    if harm == "flip":
        flip(path, seed % path.stat().st_size, 1 + seed % 255)
    elif harm == "copy":
        path.write_bytes(other.read_bytes())
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(DamagedState, match="verify --repair") as refusal:
        read_states(store.directory, [store.state_files()[key_of(0)]], LAYOUT)
    assert str(refusal.value).startswith(f"{path}: ")
    carried = pickle.loads(pickle.dumps(refusal.value))
    assert (carried.key, str(carried)) == (key_of(0), str(refusal.value))
    export(store)
    assert store.mark_damaged(key_of(0))
    for _ in range(2):  # metrics.parquet still has its measurements
        assert store.states() == {key for key, _ in store.measurements()} == {key_of(1), key_of(2)}
        store.close()
        rebuild(store.directory)
    assert not path.exists()
    assert len(list(store.places.damaged.glob("*.safetensors"))) == (harm != "missing")
    assert verify(store).damage == []


def test_a_damaged_file_is_set_aside_before_others_can_write_the_state_again(store, monkeypatch):
    fill(store, range(1))
    store.places.state(key_of(0)).write_bytes(b"x")
    seen = []

    def looked_at(*arguments):
        with sqlite3.connect(store.places.index) as other:
            seen.extend(other.execute("SELECT key FROM states").fetchall())
        other.close()
        set_aside(*arguments)

    set_aside = module.set_aside
    monkeypatch.setattr(module, "set_aside", looked_at)
    assert store.mark_damaged(key_of(0))
    assert seen == [(key_of(0),)] * 2  # not committed yet
    assert store.states() == set()


def test_states_go_and_measurements_stay(store, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    fill(store, range(3))
    rows = store.measurements().keys()
    assert store.drop_states(["absent", key_of(0), key_of(2)]) == {key_of(0), key_of(2)}
    assert store.states() == {key_of(1)}
    assert not store.places.state(key_of(0)).exists()
    assert store.measurements().keys() == rows
    before = contents(store)
    # A crash between files and their commit, or between a drop's rows and its files.
    size = sum(written(store, n).bytes for n in (5, 6, 7))
    assert (contents(store), verify(store).damage) == (before, [])
    assert store.gc()["orphans"] == size
    assert not any(store.places.state(key_of(n)).exists() for n in (5, 6, 7))
    assert contents(store) == before


@pytest.mark.parametrize("removed", ["drop_states", "gc"])
def test_a_state_that_is_written_again_while_it_is_removed_stays(store, monkeypatch, removed):
    fill(store, range(2))
    if removed == "gc":
        written(store, 7)
    number = 0 if removed == "drop_states" else 7
    unlink, task = Store._unlink_unwanted, (key_of(number), "own")

    def meanwhile(self, keys):
        with Store.open(store.directory) as other, other.owner() as owner:
            assert owner.claim([task], again=[task]) == [task]
            other.commit([], [written(other, number)], [task])
        return unlink(self, keys)

    monkeypatch.setattr(store, "_unlink_unwanted", lambda keys: meanwhile(store, keys))
    if removed == "gc":
        assert store.gc()["orphans"] == 0
    else:
        assert store.drop_states([key_of(0)]) == {key_of(0)}
    assert key_of(number) in contents(store)["states"]
    assert verify(store).damage == []


class InterruptedAfterBegin:
    """A connection whose BEGIN is followed by Ctrl-C at once."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, statement, *values):
        result = self._connection.execute(statement, *values)
        if statement.startswith("BEGIN"):
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("use", [lambda s: s.states(), lambda s: s.commit([], [], [])], ids=["read", "write"])
def test_ctrl_c_leaves_no_transaction_open(store, monkeypatch, use):
    """What waits to be written by another thread is written then."""
    opened = store._open()
    with monkeypatch.context() as patch:
        patch.setattr(store, "_open", lambda: InterruptedAfterBegin(opened))
        with pytest.raises(KeyboardInterrupt):
            use(store)
    store.commit([measurement(1)], [], [])
    assert set(store.measurements()) == {measurement(1).key}


def test_ctrl_c_is_no_damage_of_the_table(store, monkeypatch):
    def read_parquet(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
            for _ in range(100):  # where the main thread would see it
                time.sleep(0)
        except KeyboardInterrupt as error:
            raise polars.exceptions.PanicException from error
        return polars.DataFrame()

    store.commit([measurement(1)], [], [])
    export(store)
    monkeypatch.setattr(polars, "read_parquet", read_parquet)
    with pytest.raises(KeyboardInterrupt):
        list(read_table(store.places))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_parent_and_forked_child_go_on_with_the_same_store(store):
    store.commit([measurement(1)], [], [])
    with store.owner() as owner:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.commit([measurement(2)], [], [])
                try:
                    owner.claim([("zz", "own")])
                except RuntimeError:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert owner.claim([("zz", "own")]) == [("zz", "own")]
    store.commit([measurement(3)], [], [])
    assert set(store.measurements()) == {measurement(n).key for n in (1, 2, 3)}
    assert verify(store).damage == []
