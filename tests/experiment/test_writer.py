"""The writer behind the training: what is written, in which order, and what is lost by nobody."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from begun_stores import claims
from torch import nn

import fastwi.experiment.writer as module
from fastwi.errors import UserError
from fastwi.experiment.store import Measurement, Store, StoredState, write_states
from fastwi.experiment.tree import OWN
from fastwi.experiment.worker import Outcome
from fastwi.experiment.writer import MOST_WAITING, Writer
from fastwi.population import Population

NETWORK = Population.from_modules([nn.Linear(2, 2)])


def outcome(*keys: str, train_loss: float = 0.5) -> Outcome:
    rows = [Measurement(key, OWN, 1, train_loss, 0.1, 0.5, 50.0, 1.0) for key in keys]
    return Outcome([], rows, [(key, NETWORK) for key in keys])


class Slow:
    """Writes as `write_states` does, but waits before the first time for `go`; notes what is stored each time."""

    def __init__(self, store: Store) -> None:
        self._store, self.go, self.begun = store, threading.Event(), threading.Event()
        self.stored: list[set[str]] = []

    def __call__(self, directory: Path, states: Sequence[tuple[str, Population]]) -> list[StoredState]:
        self.begun.set()
        assert self.go.wait(60)
        self.stored.append(self._store.states())
        return write_states(directory, states)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def writer(store: Store, lines: list[str]) -> Iterator[Writer]:
    with Writer(store, lines.append) as made:
        yield made


@pytest.fixture
def slow(store: Store, monkeypatch: pytest.MonkeyPatch) -> Slow:
    made = Slow(store)
    monkeypatch.setattr(module, "write_states", made)
    return made


def test_outcomes_are_written_whole_and_in_order(store: Store, slow: Slow, writer: Writer) -> None:
    with store.owner() as owner:
        names = owner.claim([(key, OWN) for key in ("aa", "bb", "cc")])
        writer.put(outcome("aa", "bb"), names[:2])
        writer.put(outcome("cc"), names[2:])
        assert store.measurements() == {}
        slow.go.set()
        writer.flush()
        assert slow.stored == [set(), {"aa", "bb"}]
        assert (set(store.measurements()), store.states()) == (set(names), {"aa", "bb", "cc"})
        assert claims(store) == {}


def test_an_unwanted_state_is_not_written(store: Store, slow: Slow, writer: Writer) -> None:
    writer.put(outcome("aa"), ())
    writer.put(outcome("bb", "cc"), ())
    assert slow.begun.wait(60)
    writer.drop(["bb"])
    slow.go.set()
    writer.flush()
    assert store.states() == {"aa", "cc"}
    assert len(store.measurements()) == 3
    assert not store.places.state("bb").exists()
    writer.put(outcome("bb"), ())  # trained again, because it is needed again
    writer.flush()
    assert store.states() == {"aa", "bb", "cc"}


def test_a_state_goes_after_what_was_made_of_it_is_written(store: Store, slow: Slow, writer: Writer) -> None:
    """A kill between two outcomes leaves something to go on from."""
    store.commit((), write_states(store.directory, [("aa", NETWORK)]), ())
    writer.put(outcome("another"), ())
    writer.put(outcome("made-of-aa"), ())
    assert slow.begun.wait(60)
    writer.drop(["aa"])
    slow.go.set()
    writer.flush()
    assert slow.stored == [{"aa"}, {"aa", "another"}]
    assert store.states() == {"another", "made-of-aa"}


def test_an_error_is_raised_where_the_training_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits behind the outcome that fails is not written either."""
    go = threading.Event()

    def full(directory: Path, states: Sequence[tuple[str, Population]]) -> list[StoredState]:
        assert go.wait(60)
        if states[0][0] == "aa":
            raise UserError("no space left")
        return write_states(directory, states)

    writer = Writer(store, print)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_states", full)
        writer.put(outcome("aa"), ())
        writer.put(outcome("waits"), ())
        go.set()
        with pytest.raises(UserError, match="no space left"):
            writer.flush()
    for use in (lambda: writer.put(outcome("bb"), ()), lambda: writer.__exit__(None, None, None)):
        with pytest.raises(UserError, match="no space left"):
            use()
    assert store.measurements() == {}


def test_what_waits_is_written_when_it_is_interrupted(store: Store, slow: Slow) -> None:
    keys = [f"{number:02}" for number in range(MOST_WAITING)]

    def interrupted() -> None:
        with Writer(store, print) as writer:
            for key in keys:
                writer.put(outcome(key), ())
            assert store.states() == set()
            slow.go.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.states() == set(keys)


def test_measurements_that_differ_are_reported(store: Store, writer: Writer, lines: list[str]) -> None:
    writer.put(outcome("aa"), ())
    writer.put(outcome("aa", train_loss=0.25), ())
    writer.flush()
    assert [line.split()[0] for line in lines] == ["1"]
    assert store.measurements()["aa", OWN].train_loss == 0.5
