"""Writes outcomes of jobs behind the training: files of states, then all else in one transaction."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

from fastwi.experiment.store import Store, write_states
from fastwi.experiment.tree import MeasurementKey
from fastwi.experiment.worker import Outcome

MOST_WAITING = 4
"""Outcomes that are not written yet. Adding another one waits."""


class Writer(AbstractContextManager["Writer"]):
    """A thread that does all writing to a store while a tree is trained.

    Outcomes are written in order, each as a whole: a kill loses all outcomes from some moment on. A context manager;
    what waits is written when it is left, also by Ctrl-C and SIGTERM. After an error nothing more is written, and
    every method raises it (UserError: a full disk).
    """

    def __init__(self, store: Store, warn: Callable[[str], None]) -> None:
        """`warn` is called with a line for each measurement that differs from an earlier one."""
        self._store, self._warn = store, warn
        self._thread = ThreadPoolExecutor(1, "fastwi-writer")
        self._room = threading.Semaphore(MOST_WAITING)
        self._unwanted: set[str] = set()
        self._error: BaseException | None = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._raise()

    def put(self, outcome: Outcome, claims: Sequence[MeasurementKey]) -> None:
        """Have an outcome written and `claims` ended."""
        self._raise()
        self._room.acquire()
        self._submit(partial(self._write, outcome, claims)).add_done_callback(lambda _: self._room.release())

    def drop(self, keys: Iterable[str]) -> None:
        """Have states removed that nothing needs, or not written where they still wait.

        They go once all outcomes are written that were put before: these may be what made them unnecessary.
        """
        unwanted = list(keys)
        if unwanted:
            self._unwanted.update(unwanted)
            self._submit(partial(self._store.drop_states, unwanted))

    def flush(self) -> None:
        """Wait until all is written, and forget what was unwanted."""
        self._submit(self._unwanted.clear).result()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _submit(self, do: Callable[[], object]) -> Future[None]:
        return self._thread.submit(self._try, do)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            if self._error is None:
                do()
        except BaseException as error:  # raised again in the thread that trains
            self._error = error

    def _write(self, outcome: Outcome, claims: Sequence[MeasurementKey]) -> None:
        states = [(key, state) for key, state in outcome.states if key not in self._unwanted]
        files = [*write_states(self._store.directory, states), *outcome.files]
        differing = self._store.commit(outcome.measurements, files, claims)
        if differing:
            self._warn(
                f"{len(differing)} measurements differ from those of an earlier training of the same epoch (another "
                "machine, version or number of threads); the earlier ones are kept"
            )
