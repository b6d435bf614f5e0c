"""The store keeps states and measurements to the bit, in transactions, and says where results disagree."""

import dataclasses
import math
import os
import pickle
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars
import pytest
import torch
from store_samples import bits, contents, exact, fill, key_of, measurement, network
from torch import nn

from fastwi.errors import CheckpointError
from fastwi.experiment.store import (
    DamagedState,
    Measurement,
    Store,
    StoredState,
    read_state,
    read_states,
    rebuild,
    write_state,
    write_states,
)
from fastwi.experiment.store.database import Database
from fastwi.experiment.store.removal import unlink_unwanted
from fastwi.experiment.store.states import hash_file
from fastwi.experiment.store.table import read_table
from fastwi.population import Layout, Population


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


def test_measurements_come_back_to_the_bit_from_the_index_and_from_parquet(store, seed):
    draw = random.Random(seed)
    made = [measurement(n) for n in range(40)] + [measurement(n, "recomputed", draw) for n in range(200)]
    made += [measurement(n, "own", draw) for n in range(40, 200)]
    assert store.commit(made, [], []) == []
    found = store.measurements()
    assert sorted(map(exact, found.values())) == sorted(map(exact, made))
    store.export()
    store.close()
    store.places.index.unlink()
    rebuild(store.directory)
    with Store.open(store.directory) as again:
        assert sorted(map(exact, again.measurements().values())) == sorted(map(exact, made))


def test_the_table_is_sorted_and_plain(store):
    rows = [Measurement("bb", "own", 3, 0.5, 0.1, 1.25, 90.5, 2.0), Measurement("aa", "z", 1, None, None, 2, 3, 4)]
    store.commit(rows, [], [])
    frame = polars.read_parquet(store.export())
    assert frame.drop("crc").rows() == [("aa", "z", 1, None, None, 2.0, 3.0, 4.0), dataclasses.astuple(rows[0])]


def test_an_empty_store_can_be_exported_and_rebuilt(store):
    assert polars.read_parquet(store.export()).height == 0
    assert store.verify() == []
    store.close()
    rebuild(store.directory)
    assert store.measurements() == {}


def test_chosen_keys_only(store):
    fill(store, range(6))
    wanted = [(key_of(2), "own"), (key_of(2), "own"), (key_of(3), "recomputed"), (key_of(4), "absent"), ("zz", "own")]
    assert set(store.measurements(wanted)) == {wanted[0], wanted[2]}
    assert store.states([key_of(1), "zz"]) == {key_of(1)}
    assert store.states() == {key_of(n) for n in range(6)}
    assert store.measurements([]) == {}
    assert store.measurements([wanted[2]]).keys() == {wanted[2]}  # looked up, where the table is scanned for many
    many = [*wanted, *((f"{n:08x}", "own") for n in range(1000))]
    assert set(store.measurements(many)) == {wanted[0], wanted[2]}
    assert store.state_files([key_of(1), "zz"]) == {key_of(1): store.state_file(key_of(1))}
    assert store.state_files() == {key_of(n): store.state_file(key_of(n)) for n in range(6)}


def test_a_hundred_thousand_measurements(store):
    rows = [Measurement(f"{n:08x}", "own", n % 9, 0.1, 0.2, n / 3, math.nan, 0.5) for n in range(100_000)]
    begun = time.process_time()
    store.commit(rows, [], [])
    found = store.measurements([m.key for m in rows[::-1]])
    assert time.process_time() - begun < 15  # 2 s where this was written; a scan for each key would take hours
    assert len(found) == 100_000
    assert exact(found["000000ff", "own"]) == exact(rows[255])


def test_the_first_measurement_stays_and_a_different_one_is_named(store):
    first = measurement(1)  # its values include NaN
    assert store.commit([first], [], []) == []
    assert store.commit([first, dataclasses.replace(first, seconds=9.0)], [], []) == []
    for name, value in (("test_loss", 1.5), ("epoch", 5), ("train_loss", None), ("learning_rate", bits(1))):
        changed = dataclasses.replace(first, **{name: value})
        assert store.commit([changed, measurement(2)], [], []) == [first.key], name
    zero = dataclasses.replace(first, state="zz", test_loss=0.0)
    assert store.commit([zero, dataclasses.replace(zero, test_loss=-0.0)], [], []) == [zero.key]
    found = store.measurements()
    assert [exact(found[m.key]) for m in (first, measurement(2), zero)] == [
        exact(m) for m in (first, measurement(2), zero)
    ]


def test_a_failed_commit_changes_nothing(store):
    fill(store, range(3))
    before = contents(store)
    with store.owner() as owner:
        task = (key_of(9), "own")
        owner.claim([task])
        good, bad = measurement(9), dataclasses.replace(measurement(8), epoch=2**70)  # SQLite has no such number
        with pytest.raises(OverflowError):
            store.commit([good, bad], [store.state_file(key_of(0))], [task])
        assert owner.claim([task]) == []  # the claim stands
    before["attempts"][task] = 1
    assert contents(store) == before


def test_states_come_back_to_the_bit_by_store_and_by_worker(store):
    made = network(7)
    file = write_state(store.directory, "abc", made)
    assert store.states() == set()
    with pytest.raises(DamagedState, match="not in the store"):
        store.load_state("abc")
    store.commit([], [file], [])
    assert store.state_file("abc") == file
    assert file.bytes == (store.directory / "states" / "ab" / "abc.safetensors").stat().st_size
    for loaded in (store.load_state("abc", made.layout, "cpu"), read_state(store.directory, file)):
        assert torch.equal(loaded.weights_MP, made.weights_MP)
        assert torch.equal(loaded.momentum_MP, made.momentum_MP)
    with pytest.raises(CheckpointError, match="written for another network") as refusal:
        store.load_state("abc", Layout.of(nn.Linear(2, 2)))
    assert not isinstance(refusal.value, DamagedState)


def test_many_states_at_once_are_the_same_files_as_one_by_one(store):
    before = os.umask(0o022)
    os.umask(before)
    made = [(key_of(n), network(n)) for n in range(20)]
    single = [store.write_state(*state) for state in made]
    contents_before = [store.places.state(file.key).read_bytes() for file in single]
    for file in single:
        store.places.state(file.key).unlink()
    with ThreadPoolExecutor(2) as threads:  # as a sweep's writer does
        halves = list(threads.map(lambda part: write_states(store.directory, part), (made[:10], made[10:])))
    assert halves[0] + halves[1] == single
    assert os.umask(before) == before
    assert [store.places.state(file.key).read_bytes() for file in single] == contents_before
    assert write_states(store.directory, []) == []
    loaded = read_states(store.directory, [*single, single[3]], made[0][1].layout)
    for m, n in enumerate((*range(20), 3)):
        row = loaded.select(slice(m, m + 1))
        assert torch.equal(row.weights_MP, made[n][1].weights_MP)
        assert torch.equal(row.momentum_MP, made[n][1].momentum_MP)
        assert torch.equal(row.statistics_MQ, made[n][1].statistics_MQ)
        assert torch.equal(row.counters_MB, made[n][1].counters_MB)


def test_the_first_damaged_state_of_many_is_named(store):
    files = [store.write_state(key_of(n), network(n)) for n in range(12)]
    for n in (5, 8):
        path = store.places.state(key_of(n))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for layout in (None, network(0).layout):
        with pytest.raises(DamagedState) as refusal:
            read_states(store.directory, files, layout)
        assert refusal.value.key == key_of(5)
    other = store.write_state("other", Population.from_modules([nn.Linear(2, 2)]))
    with pytest.raises(CheckpointError, match="written for another network") as mismatch:
        read_states(store.directory, [files[0], other])
    assert not isinstance(mismatch.value, DamagedState)
    two = store.places.state("several")
    network(1).select([0, 0]).save(two)
    with pytest.raises(DamagedState, match="holds 2 members"):
        read_states(store.directory, [StoredState("several", two.stat().st_size, hash_file(two))])


def test_only_single_networks_and_proper_keys(store):
    with pytest.raises(ValueError, match="2 members"):
        store.write_state("abc", network(1).select([0, 0]))
    for key in ("", "a", "../x", "a/b", ".ab"):
        with pytest.raises(ValueError, match="no key"):
            store.write_state(key, network(1))


@pytest.mark.parametrize("harm", ["flip", "copy", "cut", "missing"])
def test_a_harmed_state_is_never_used_and_can_be_forgotten(store, harm, seed):
    fill(store, range(3))
    path, other = (store.places.state(key_of(n)) for n in (0, 1))
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[seed % len(content)] ^= 1 + seed % 255
        path.write_bytes(content)
    elif harm == "copy":
        path.write_bytes(other.read_bytes())
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(DamagedState) as refusal:
        store.load_state(key_of(0))
    assert str(refusal.value).startswith(f"{path}: ")
    assert "verify --repair" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    carried = pickle.loads(pickle.dumps(refusal.value))
    assert (carried.key, str(carried)) == (key_of(0), str(refusal.value))
    assert store.mark_damaged(key_of(0))
    assert store.states() == {key_of(1), key_of(2)}
    assert {key for key, _ in store.measurements()} == store.states()
    assert not path.exists()
    assert len(list(store.places.damaged.glob("*"))) == (harm != "missing")
    with store.owner() as owner:
        assert owner.claim([(key_of(0), "own")]) == [(key_of(0), "own")]
    assert store.verify() == []


def test_a_state_that_is_right_is_not_forgotten(store):
    fill(store, range(1))
    before = contents(store)
    assert not store.mark_damaged(key_of(0))
    assert contents(store) == before


def test_a_crash_between_file_and_commit_leaves_the_store_as_it_was(store):
    fill(store, range(2))
    before = contents(store)
    store.write_state(key_of(5), network(5))
    assert contents(store) == before
    assert store.verify() == []
    assert store.gc().orphans > 0
    assert not store.places.state(key_of(5)).exists()
    assert contents(store) == before


def test_states_go_and_measurements_stay(store):
    fill(store, range(3))
    rows = store.measurements().keys()
    assert store.drop_states([key_of(0), key_of(2), "absent"]) == {key_of(0), key_of(2)}
    assert store.states() == {key_of(1)}
    assert not store.places.state(key_of(0)).exists()
    assert store.measurements().keys() == rows
    assert store.verify() == []


def test_a_state_that_is_written_again_while_it_is_dropped_stays(store, monkeypatch):
    fill(store, range(2))
    before = contents(store)

    def meanwhile(database: Database, keys: list[str]) -> int:
        with Store.open(store.directory) as other, other.owner() as owner:
            task = (key_of(0), "own")
            assert owner.claim([task], again=[task]) == [task]
            other.commit([], [other.write_state(key_of(0), network(0))], [task])
        return unlink_unwanted(database, keys)

    monkeypatch.setattr("fastwi.experiment.store.removal.unlink_unwanted", meanwhile)
    assert store.drop_states([key_of(0)]) == {key_of(0)}
    before["attempts"][key_of(0), "own"] = 2
    assert contents(store) == before
    assert store.verify() == []


def test_a_drop_that_is_cut_off_leaves_files_to_gc(store, monkeypatch):
    fill(store, range(2))

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        store.drop_states([key_of(0)])
    monkeypatch.undo()
    assert store.verify() == []
    store.commit([], [store.write_state(key_of(0), network(0))], [])
    before = contents(store)
    assert store.gc().temporary == store.state_file(key_of(0)).bytes
    assert contents(store) == before


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
    opened = store.database._open()
    with monkeypatch.context() as patch:
        patch.setattr(store.database, "_open", lambda: InterruptedAfterBegin(opened))
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
    store.export()
    monkeypatch.setattr(polars, "read_parquet", read_parquet)
    with pytest.raises(KeyboardInterrupt):
        list(read_table(store.places))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
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
    assert store.verify() == []
