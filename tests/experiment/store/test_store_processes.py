"""Several processes at one store: no task is given twice, no row is lost, and the dead hold nothing."""

import errno
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from begun_stores import claims
from store_samples import contents, fill, key_of, measurement, network, written

from fastwi.errors import UserError
from fastwi.experiment.store import Store, rebuild, write_states
from fastwi.experiment.store.repair import verify
from fastwi.files import lock

SPAWN = multiprocessing.get_context("spawn")
HUNG = 600  # seconds; no machine is so slow
TASKS = [(key_of(number), "own") for number in range(60)]


def hammer(directory: Path, seed: int, given: "multiprocessing.Queue") -> None:
    """Claim a few tasks at a time and commit or release them, until all are measured."""
    draw, mine = random.Random(seed), []
    with Store.open(directory) as store, store.owner() as owner:
        while len(store.measurements()) < len(TASKS):
            tasks = owner.claim(draw.sample(TASKS, draw.randint(1, 6)))
            if draw.random() < 0.2:
                owner.release(tasks)
                continue
            mine += tasks
            rows = [measurement(TASKS.index(task)) for task in tasks]
            assert store.commit(rows, [], tasks) == []
    given.put(mine)


def test_no_task_is_given_twice_and_no_row_is_lost(tmp_path, seed):
    given = SPAWN.Queue()
    # None makes the store beforehand: they race for that too.
    workers = [SPAWN.Process(target=hammer, args=(tmp_path / "s", seed + n, given)) for n in range(3)]
    for worker in workers:
        worker.start()
    lists = [given.get(timeout=HUNG) for _ in workers]
    for worker in workers:
        worker.join(HUNG)
        assert worker.exitcode == 0
    assert sorted(task for tasks in lists for task in tasks) == sorted(TASKS)
    with Store.open(tmp_path / "s", create=False) as store:
        assert set(store.measurements()) == set(TASKS)
        assert claims(store) == {}
        assert verify(store).damage == []
        assert all(count >= 1 for count in store.attempts().values())


HOLDER = """
import os, sys
sys.path.insert(0, {tests!r})
from store_samples import *
store = Store.open({directory!r})
owner = store.owner()
owner.claim([("aa", "own"), ("bb", "own")])
owner.pin([key_of(0)])
store.commit([measurement(50)], [], [])
(store.places.states / "aa").mkdir(parents=True)
(store.places.states / "aa" / ".aa.safetensors.x1.tmp").write_bytes(b"half")
if os.fork():  # a child that outlives it holds nothing
    print("held", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def holder(tmp_path):
    """A process with claims, a pin and an unfinished file; killed at the end if not before."""
    with Store.open(tmp_path / "s") as store:
        fill(store, range(2))
    script = HOLDER.format(tests=str(Path(__file__).parent), directory=str(tmp_path / "s"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_kill_9_frees_what_a_process_held(holder, tmp_path):
    with Store.open(tmp_path / "s") as store, store.owner() as owner:
        tasks = [("aa", "own"), ("bb", "own")]
        unfinished = store.places.states / "aa" / ".aa.safetensors.x1.tmp"
        assert owner.claim(tasks) == []
        assert store.drop_states([key_of(0), key_of(1)]) == {key_of(1)}
        write_states(store.directory, [("bb", network(3))])
        store.gc()
        assert unfinished.exists()
        assert store.places.state("bb").exists()  # claimed: it may be committed yet
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert owner.claim(tasks[:1]) == tasks[:1]
        assert store.gc()["claims"] == 2  # the pin and bb
        assert unfinished.exists()  # of a state that a live owner, this one, has claimed
        assert not store.places.state("bb").exists()
        owner.release(tasks[:1])
        assert store.gc()["temporary"] == 4
        assert not unfinished.exists()
        assert store.drop_states([key_of(0)]) == {key_of(0)}
        assert measurement(50).key in store.measurements()  # was committed before the kill
        assert store.attempts()["aa", "own"] == 2
        assert [path.stem for path in store.places.owners.iterdir()] == [owner.id]
        assert verify(store).damage == []


def test_gc_may_take_the_file_of_an_owner_that_has_not_locked_it_yet(tmp_path, monkeypatch):
    def late(descriptor, path, **how):
        monkeypatch.undo()
        path.unlink()
        return lock(descriptor, path, **how)

    with Store.open(tmp_path / "s") as store:
        monkeypatch.setattr("fastwi.experiment.store.owner.lock", late)
        with store.owner() as owner:
            assert [path.stem for path in store.places.owners.iterdir()] == [owner.id]
            assert store.gc()["claims"] == 0
            assert [path.stem for path in store.places.owners.iterdir()] == [owner.id]


def test_gc_leaves_alone_what_is_being_written(tmp_path):
    with Store.open(tmp_path / "s") as store:
        store.commit([measurement(1)], [], [])
        store.places.states.mkdir()
        unfinished = store.places.states / ".aa.safetensors.x1.tmp"

        class Slow:
            members = 1

            def file_pieces(self) -> Iterator[memoryview]:
                unfinished.write_bytes(b"half")
                store.gc()
                assert unfinished.exists()
                yield memoryview(b"whole")

        write_states(store.directory, [("aa", Slow())])
        assert store.gc()["temporary"] == 4


def test_gc_removes_what_a_kill_left_of_states_that_are_to_be_kept(tmp_path):
    with Store.open(tmp_path / "s") as store:
        fill(store, range(1))
        store.keep(map(key_of, range(3)))
        orphan = written(store, 1)
        final = store.places.state(key_of(2))
        final.parent.mkdir(exist_ok=True)
        final.with_name(f".{final.name}.x1.tmp").write_bytes(b"half")
        freed = store.gc()
        assert (freed["orphans"], freed["temporary"]) == (orphan.bytes, 4)
        assert list(contents(store)["states"]) == [key_of(0)]
        assert not store.stray_states()


def test_gc_of_a_store_whose_first_process_died_before_it_committed_anything(tmp_path):
    """Its attempts say that the index was not lost."""
    with Store.open(tmp_path / "s") as store:
        with store.owner() as owner:
            owner.claim([("aa", "own")])
            (file,) = write_states(store.directory, [("aa", network(1))])
        assert store.gc()["orphans"] == file.bytes
        assert not store.places.state("aa").exists()


def test_a_full_disk_is_a_line_and_leaves_no_owner(tmp_path, monkeypatch):
    def full(_descriptor, _text):
        raise OSError(errno.ENOSPC, "No space left on device")

    gc.collect()  # earlier tests' files
    with Store.open(tmp_path / "s") as store:
        there = sorted(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(UserError, match=r"owners/.*\.lock: no space left on the device; free some"):
                store.owner()
        assert sorted(os.listdir("/proc/self/fd")) == there
        assert store.gc()["locks"] == 1


def test_claims(tmp_path):
    with Store.open(tmp_path / "s") as store, Store.open(tmp_path / "s") as other:
        a, b, c = tasks = [("aa", "own"), ("bb", "own"), ("cc", "recomputed")]
        with store.owner() as mine, other.owner() as theirs:
            assert mine.claim([b, a, b]) == [b, a]
            assert mine.claim(tasks) == [c]
            assert theirs.claim(tasks) == []
            mine.release([b])
            theirs.release([a])  # not theirs to release
            assert theirs.claim(tasks) == [b]
            row = measurement(1)
            assert theirs.claim([row.key]) == [row.key]
            other.commit([row], [], [row.key])
            assert theirs.claim([row.key]) == []
            assert mine.claim([row.key], again=[row.key]) == [row.key]
            assert theirs.claim([row.key], again=[row.key]) == []
            assert store.attempts() == {a: 1, b: 2, c: 1, row.key: 2}
            assert store.look([row.key, a], []) == ({row.key: row}, {}, {b})
            assert other.look([a], ["aa"]) == ({}, {}, {a, c, row.key})
            # All of a group or none; what is had already counts.
            d, e, f = [("dd", "own"), ("ee", "own"), ("ff", "own")]
            assert mine.claim([d, b, e], groups=[[d, b], [e]]) == [e]
            assert mine.claim([d, f], groups=[[d, e, f]]) == [d, f]
            assert store.attempts()[d] == 1
        with pytest.raises(RuntimeError, match="closed"):
            mine.claim(tasks)
        with other.owner() as third:
            assert third.claim(tasks) == tasks
        assert not list(store.places.owners.iterdir())


def test_pins_hold_for_others_only(tmp_path):
    with Store.open(tmp_path / "s") as store, Store.open(tmp_path / "s") as other:
        fill(store, range(3))
        keys = [key_of(n) for n in range(3)]
        with store.owner() as mine, other.owner() as theirs:
            mine.pin(keys)
            mine.pin(keys)
            theirs.pin(keys[:2])
            # The last of two to drop a state removes it.
            assert store.drop_states(keys[:1]) == set()
            assert other.drop_states(keys) == {keys[0]}
            assert store.drop_states(keys) == set(keys[1:])
        assert contents(store)["states"] == {}


def test_states_that_are_kept_outlive_every_process(tmp_path):
    with Store.open(tmp_path / "s") as store:
        fill(store, range(2))
        store.keep([key_of(0), key_of(0), "absent"])
        store.keep([key_of(0)])
        store.gc()
        with store.owner() as owner:
            owner.pin([key_of(0)])
            assert store.drop_states([key_of(0), key_of(1)]) == {key_of(1)}
    rebuild(tmp_path / "s")
    with Store.open(tmp_path / "s") as store:
        assert store.drop_states([key_of(0)]) == set()
        assert key_of(0) in contents(store)["states"]


def write_in_turn(directory: Path, number: int, others: "multiprocessing.Barrier", order: "multiprocessing.Queue"):
    """Commit rows without a pause, and list who committed."""
    with Store.open(directory) as store:
        others.wait(HUNG)
        for n in range(40):
            store.commit([measurement(1000 * number + n)], [], [])
            order.put(number)


def read_beside(directory: Path, others: "multiprocessing.Barrier", ended: "multiprocessing.Event"):
    """Look at all measurements without a pause: none that was there goes."""
    with Store.open(directory) as store:
        others.wait(HUNG)
        count = 0
        while not ended.is_set():
            found = len(store.measurements())
            assert found >= count
            count = found


def test_writers_have_their_turns_beside_readers(tmp_path):
    """Of three writers none goes on while another one waits."""
    others, order, ended = SPAWN.Barrier(5), SPAWN.Queue(), SPAWN.Event()
    writers = [SPAWN.Process(target=write_in_turn, args=(tmp_path / "s", n, others, order)) for n in range(3)]
    readers = [SPAWN.Process(target=read_beside, args=(tmp_path / "s", others, ended)) for _ in range(2)]
    for process in writers + readers:
        process.start()
    turns = [order.get(timeout=HUNG) for _ in range(120)]
    ended.set()
    for process in writers + readers:
        process.join(HUNG)
        assert process.exitcode == 0
    with Store.open(tmp_path / "s", create=False) as store:
        assert len(store.measurements()) == 120
    assert all(turns[:90].count(n) >= 5 for n in range(3)), turns  # a third each is 30


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from store_samples import *
class Fake:
    members = 1
    def file_pieces(self):
        return [memoryview(bytes(100))]
store = Store.open({directory!r})
with store.owner() as owner:
    number = {first}
    while True:
        task = (key_of(number), "own")
        assert owner.claim([task]) == [task]
        files = write_states(store.directory, [(key_of(number), Fake())])
        store.commit([measurement(number)], files, [task])
        print(number, flush=True)
        if number % 5 == 0:
            store.drop_states([key_of(number - 1), key_of(number - 2)])
        if number % 23 == 0:
            store.gc()
        number += 1
"""


def test_kill_9_at_any_moment_loses_nothing_that_was_committed(tmp_path, seed):
    draw, done = random.Random(seed), 0
    for _ in range(5):
        script = WRITER.format(tests=str(Path(__file__).parent), directory=str(tmp_path / "s"), first=done)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        process.wait()
        tail = process.stdout.read().split()
        process.stdout.close()
        done = max(done, int(tail[-1]) if tail else 0)
        with Store.open(tmp_path / "s", create=False) as store:
            assert verify(store).damage == []
            found = store.measurements()
            assert {key_of(number) for number in range(done + 1)} <= {state for state, _ in found}
            done = len(found)  # the one that was committed but not reported, too
            assert set(found) == {(key_of(number), "own") for number in range(done)}
    with Store.open(tmp_path / "s") as store:
        store.gc()
        stored = {path.stem for path in store.places.states.rglob("*") if path.is_file()}
        assert stored == store.states()
        assert claims(store) == {}
        assert not list(store.places.owners.iterdir())
