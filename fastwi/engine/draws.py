"""Draws made ahead: a thread makes those of the next epoch while this one is trained.

This is a cache: draws are pure functions of what is asked for. NumPy releases Python's lock while it draws and sorts.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastwi.data.noise import Draws, Noise

AHEAD_BYTES = 256 * 2**20
"""Of draws that are kept in memory. As they are taken, the next ones are made."""

_BYTES_AN_IMAGE = 4 + 2 + 1  # order, offset, flip


class DrawRequest(NamedTuple):
    """What decides an epoch's draws: see `Noise.draws`."""

    noise: Noise
    epoch: int
    images: int
    padding: int
    flip_probability: float

    def draw(self) -> Draws:
        """The draws, small to keep and to move: order int32, offset uint8 where it fits, flip bool."""
        draws = self.noise.draws(self.epoch, self.images, self.padding, self.flip_probability)
        offset_N2 = draws.offset_N2.astype(np.uint8 if 2 * self.padding < 256 else np.int32)
        return replace(draws, order_N=draws.order_N.astype(np.int32), offset_N2=offset_N2)


class DrawsAhead:
    """Draws by request: made ahead where they were asked for, else when they are taken.

    What the last two calls of `ask` asked for is kept until it is taken: the next epoch's, and this one's rest.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock, self._running = os.getpid(), threading.Lock(), False
        self._asked: deque[Counter[DrawRequest]] = deque(maxlen=2)  # how often each is still to be taken
        self._begun: dict[DrawRequest, Future[Draws]] = {}

    def ask(self, requests: Sequence[DrawRequest]) -> None:
        """Have a thread make these draws, in this order. One that is listed twice is kept for both."""
        self._check_process()
        with self._lock:
            self._asked.append(Counter(requests))
            self._begun = {request: ahead for request, ahead in self._begun.items() if self._is_asked(request)}
            self._go_on()

    def take(self, request: DrawRequest, times: int = 1) -> Draws:
        """The draws of `request`, which stands for `times` of its places in the list that was asked for."""
        self._check_process()
        with self._lock:
            ahead = self._begun.get(request)
            asked = next((each for each in self._asked if request in each), Counter())
            asked[request] -= times
            if asked[request] <= 0:
                del asked[request]
            if not self._is_asked(request):
                self._begun.pop(request, None)
            self._go_on()
        # Where the thread failed they are drawn here, so that the caller gets the exception if it comes again.
        if ahead is not None and ahead.exception() is None:
            return ahead.result()
        return request.draw()

    def take_all(self, requests: Sequence[DrawRequest], threads: int) -> list[Draws]:
        """`take` of each, by so many threads. Equal requests share their draws."""
        times = Counter(requests)
        with ThreadPoolExecutor(max(1, min(threads, len(times)))) as pool:
            taken = list(pool.map(self.take, times, times.values()))
        draws = dict(zip(times, taken, strict=True))
        return [draws[request] for request in requests]

    def _check_process(self) -> None:
        """Forget all in a forked process: the threads are not there, and the lock may be taken."""
        if self._process != os.getpid():
            self._reset()

    def _is_asked(self, request: DrawRequest) -> bool:
        return any(request in asked for asked in self._asked)

    def _next(self) -> DrawRequest | None:
        """What is to be made next, where there is room. At exit Python waits for its threads: none then."""
        request = next((each for asked in self._asked for each in asked if each not in self._begun), None)
        if request is None or not threading.main_thread().is_alive():
            return None
        most = max(1, AHEAD_BYTES // (_BYTES_AN_IMAGE * max(1, request.images)))
        return request if len(self._begun) < most else None

    def _go_on(self) -> None:
        if not self._running and self._next() is not None:
            self._running = True
            threading.Thread(target=self._make, name="fastwi-draws").start()

    def _make(self) -> None:
        """The thread: it ends when all is made or memory is full; `take` starts it again."""
        while True:
            with self._lock:
                request = self._next()
                self._running = request is not None
                if request is None:
                    return
                self._begun[request] = ahead = Future[Draws]()
            try:
                ahead.set_result(request.draw())
            except BaseException as error:  # for `take`
                ahead.set_exception(error)
