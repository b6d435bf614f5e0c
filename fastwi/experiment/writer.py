"""Writes what jobs bring home, behind the training: files of states, then all else in one transaction."""

import queue
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType

from fastwi.experiment.store import StateFile, Store, write_states
from fastwi.experiment.tree import MeasurementKey
from fastwi.experiment.worker import Outcome

MOST_WAITING = 4
"""Outcomes that wait to be written. Whoever brings another one waits."""


class Writer:
    """A thread that does all writing to a store while a tree is trained.

    Outcomes are written in order, each as a whole: a kill loses all outcomes from some moment on. A context manager;
    what waits is written when it is left, also by Ctrl-C and SIGTERM.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: queue.Queue[tuple[Outcome, Sequence[MeasurementKey]] | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._put = self._done = 0  # outcomes
        self._unwanted: set[str] = set()
        self._to_drop: list[tuple[int, str]] = []  # each once so many outcomes are done
        self._written: list[StateFile] = []
        self._differing = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fastwi-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, outcome: Outcome, claims: Sequence[MeasurementKey]) -> None:
        """Have an outcome written and `claims` ended. Raises what an earlier writing met (UserError: a full disk)."""
        self._raise()
        self._put += 1
        self._waiting.put((outcome, claims))

    def drop(self, keys: Iterable[str]) -> None:
        """Have states removed that nothing needs, or not written where they still wait.

        They go once all outcomes are written that were put before: these may be what made them unnecessary.
        """
        unwanted = list(keys)
        with self._lock:
            self._to_drop += [(self._put, key) for key in unwanted]
            self._unwanted.update(unwanted)

    def written(self) -> tuple[list[StateFile], int]:
        """The states written since the last call, and how many measurements differed from earlier ones."""
        with self._lock:
            written, self._written = self._written, []
            differing, self._differing = self._differing, 0
        return written, differing

    def flush(self) -> None:
        """Wait until all is written, and forget what was unwanted."""
        self._waiting.join()
        self._raise()
        self._drop()
        self._unwanted.clear()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            item = self._waiting.get()
            try:
                if self._error is None:
                    if item is not None:
                        self._write(*item)
                        self._done += 1
                    self._drop()
            except BaseException as error:  # raised again in the thread that trains
                self._error = error
            finally:
                self._waiting.task_done()
            if item is None:
                return

    def _write(self, outcome: Outcome, claims: Sequence[MeasurementKey]) -> None:
        with self._lock:
            states = [(key, state) for key, state in outcome.states if key not in self._unwanted]
        files = [*write_states(self._store.directory, states), *outcome.files]
        differing = self._store.commit(outcome.measurements, files, claims)
        with self._lock:
            self._written += files
            self._differing += len(differing)

    def _drop(self) -> None:
        with self._lock:
            keys = [key for after, key in self._to_drop if after <= self._done]
            self._to_drop = [each for each in self._to_drop if each[0] > self._done]
        if keys:
            self._store.drop_states(keys)
