"""Draws made ahead: a thread makes those of the next epoch while this one is trained.

This is a cache. Draws are pure functions of what is asked for, so no result depends on what was made ahead. NumPy
releases Python's lock while it draws and sorts, so the thread runs beside whatever the caller computes.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from fastwi.data.noise import Draws, Noise

AHEAD_BYTES = 256 * 2**20
"""Of draws that one call of `DrawsAhead.ask` keeps in memory. As they are taken, the next ones are made."""

_BYTES_AN_IMAGE = 8 + 16 + 1  # order, offset, flip


class DrawRequest(NamedTuple):
    """What decides an epoch's draws: see `Noise.draws`."""

    noise: Noise
    epoch: int
    images: int
    padding: int
    flip_probability: float

    def draw(self) -> Draws:
        """The draws."""
        return self.noise.draws(self.epoch, self.images, self.padding, self.flip_probability)


class DrawsAhead:
    """Draws by request: made ahead where they were asked for, else when they are taken.

    What the last two calls of `ask` asked for is kept until it is taken, because the next epoch's draws are asked for
    while those of this one still wait. Older requests are dropped.
    """

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque()
        self._process = os.getpid()

    def ask(self, requests: Sequence[DrawRequest]) -> None:
        """Have a thread make these draws, in this order. One that is listed twice is kept for both."""
        self._check_process()
        while len(self._calls) > 1:
            self._calls.popleft().stop()
        if requests:
            self._calls.append(_Call(requests))

    def take(self, request: DrawRequest, times: int = 1) -> Draws:
        """The draws of `request`, which stands for `times` of its places in the list that was asked for."""
        self._check_process()
        for call in self._calls:
            ahead = call.take(request, times)
            # Where the thread failed they are drawn here, so that the caller gets the exception if it comes again.
            if ahead is not None and ahead.exception() is None:
                return ahead.result()
        return request.draw()

    def take_all(self, requests: Sequence[DrawRequest], threads: int) -> list[Draws]:
        """`take` of each, by so many threads. Equal requests share their draws."""
        times = Counter(requests)
        if threads == 1 or len(times) == 1:
            taken = list(map(self.take, times, times.values()))
        else:
            with ThreadPoolExecutor(min(threads, len(times))) as pool:
                taken = list(pool.map(self.take, times, times.values()))
        draws = dict(zip(times, taken, strict=True))
        return [draws[request] for request in requests]

    def _check_process(self) -> None:
        """Forget all in a forked process: the threads are not there, and their locks may be taken."""
        if self._process != os.getpid():
            self._calls, self._process = deque(), os.getpid()


class _Call:
    """What one call asked for. Its thread ends when all is made or memory is full; `take` starts it again."""

    def __init__(self, requests: Sequence[DrawRequest]) -> None:
        self._left = Counter(requests)  # how often each is still to be taken
        self._waiting = deque(self._left)
        self._begun: dict[DrawRequest, Future[Draws]] = {}
        self._most = max(1, AHEAD_BYTES // (_BYTES_AN_IMAGE * max(1, requests[0].images)))
        self._lock = threading.Lock()
        self._running = False
        with self._lock:
            self._go_on()

    def take(self, request: DrawRequest, times: int) -> Future[Draws] | None:
        """The draws, made or being made; None where they are not, and the caller is to make them."""
        with self._lock:
            if request not in self._left:
                return None
            ahead = self._begun.get(request)
            self._left[request] -= times
            if self._left[request] <= 0:
                del self._left[request]
                if ahead is None:
                    self._waiting.remove(request)
                else:
                    del self._begun[request]
            self._go_on()
        return ahead

    def stop(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._waiting.clear()

    def _go_on(self) -> None:
        if not self._running and self._has_room():
            self._running = True
            threading.Thread(target=self._make, name="fastwi-draws").start()

    def _has_room(self) -> bool:
        return bool(self._waiting) and len(self._begun) < self._most

    def _make(self) -> None:
        while True:
            with self._lock:
                # At exit Python waits for its threads: only for the draws in progress.
                self._running = self._has_room() and threading.main_thread().is_alive()
                if not self._running:
                    return
                request = self._waiting.popleft()
                self._begun[request] = ahead = Future[Draws]()
            try:
                ahead.set_result(request.draw())
            except BaseException as error:  # for `DrawsAhead.take`
                ahead.set_exception(error)
