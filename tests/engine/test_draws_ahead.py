"""Draws that a thread makes ahead: the same as without it, no more kept than is needed, and no thread left behind."""

import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from trained_networks import CHOICES, build, draw_data, make

from fastwi.data.noise import Draws, Noise
from fastwi.engine import draws as draws_module
from fastwi.engine.draws import DrawRequest, DrawsAhead
from fastwi.population import Population

IMAGES = 40
THREAD = "fastwi-draws"


def requests(*seeds: int, epoch: int = 3) -> list[DrawRequest]:
    return [DrawRequest(Noise(seed), epoch, IMAGES, 2, 0.5) for seed in seeds]


def finish() -> None:
    """Wait until the threads have made what they may make."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def is_that_of(found: Draws, request: DrawRequest) -> bool:
    other = request.noise.draws(*request[1:])
    names = ("order_N", "offset_N2", "flip_N")
    return all(np.array_equal(getattr(found, name), getattr(other, name)) for name in names)


@pytest.fixture
def drawn(monkeypatch):
    """(name of the thread, request) of everything that is drawn."""
    finish()  # what an earlier test asked for
    made: list[tuple[str, DrawRequest]] = []
    original = DrawRequest.draw

    def draw(self):
        made.append((threading.current_thread().name, self))
        return original(self)

    monkeypatch.setattr(DrawRequest, "draw", draw)
    return made


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CHOICES)
def test_training_is_the_same_with_draws_made_ahead(seed, drawn, name, threads, monkeypatch):
    """As a worker calls it: the next epoch's are asked for before this one is trained."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    data, noises = draw_data(seed), [Noise(seed + m) for m in (0, 1, 0)]
    start = Population.from_modules([build("residual", seed)] * 3)
    results = []
    for ahead in (False, True):
        drawn.clear()
        population = start.clone_rows(range(3))
        engine = make(name, "residual")
        losses = []
        for epoch in (0, 1, 2):
            if ahead:
                engine.with_config(engine.config).draw_ahead(noises, epoch + 1, data)
                finish()
            losses += engine.train_epoch(population, data, noises, epoch)
        results.append((losses, *(matrix.tolist() for matrix in population.matrices)))
        in_thread = [request.epoch for thread, request in drawn if thread == THREAD]
        in_place = [request.epoch for thread, request in drawn if thread != THREAD]
        assert in_thread == ([1, 1, 2, 2, 3, 3] if ahead else [])
        assert set(in_place) == ({0} if ahead else {0, 1, 2})
    assert results[0] == results[1]
    assert not torch.equal(population.weights_MP[0], population.weights_MP[1])
    assert torch.equal(population.weights_MP[0], population.weights_MP[2])


@pytest.mark.parametrize(
    "change",
    [{"epoch": 4}, {"images": 41}, {"padding": 1}, {"flip_probability": 0.1}, {"noise": Noise(1, statistics=True)}],
)
def test_anything_else_is_drawn_in_place(drawn, change):
    ahead, (asked,) = DrawsAhead(), requests(1)
    ahead.ask([asked])
    finish()
    other = asked._replace(**change)
    assert is_that_of(ahead.take(other), other)
    assert drawn[-1] == (threading.current_thread().name, other)


@pytest.mark.parametrize("padding", [0, 4, 127, 128])
def test_draws_are_kept_small(seed, padding):
    request = DrawRequest(Noise(seed), 3, 20_000, padding, 0.5)
    found = request.draw()
    assert is_that_of(found, request)
    assert found.offset_N2.max() == 2 * padding  # which 8 bits may not hold
    assert [x.itemsize for x in (found.order_N, found.offset_N2, found.flip_N)] == [4, 1 if padding < 128 else 4, 1]


def test_draws_are_dropped_once_taken_and_where_nobody_takes_them(seed, drawn):
    ahead, (one, two) = DrawsAhead(), requests(seed, seed + 1)
    ahead.ask([one, two, one])
    finish()
    first, again = ahead.take(one), ahead.take(one)
    assert first is again
    kept = weakref.ref(first)
    del first, again
    assert kept() is None
    ahead.ask(requests(seed, epoch=4))
    ahead.ask(requests(seed, epoch=5))
    finish()
    assert len(drawn) == 4
    assert is_that_of(ahead.take(two), two)
    assert [thread for thread, _ in drawn] == 4 * [THREAD] + [threading.current_thread().name]


def test_no_more_than_fits_into_memory_is_made_ahead(seed, drawn, monkeypatch):
    """And what is taken makes room for the rest, in whatever order."""
    monkeypatch.setattr(draws_module, "AHEAD_BYTES", 2 * 7 * IMAGES)
    ahead, asked = DrawsAhead(), requests(*range(seed, seed + 6))
    ahead.ask(asked)
    finish()
    assert len(drawn) == 2
    for n, at in enumerate((0, 5, 1, 2, 3, 4)):  # 5 has not been begun
        assert is_that_of(ahead.take(asked[at]), asked[at])
        finish()
        assert len(drawn) == min(6, 3 + n)
    assert [thread for thread, _ in drawn].count(THREAD) == 5
    assert len({request for _, request in drawn}) == 6


def test_what_fails_in_the_thread_is_drawn_in_place(seed, monkeypatch):
    original = DrawRequest.draw

    def draw(self):
        if threading.current_thread().name == THREAD:
            raise MemoryError
        return original(self)

    monkeypatch.setattr(DrawRequest, "draw", draw)
    ahead, (asked,) = DrawsAhead(), requests(seed)
    ahead.ask([asked])
    finish()
    assert is_that_of(ahead.take(asked), asked)


def test_equal_requests_are_drawn_once(seed, drawn):
    asked = requests(seed, seed + 1, seed, seed)
    for threads in (1, 3):
        drawn.clear()
        found = DrawsAhead().take_all(asked, threads)
        assert all(map(is_that_of, found, asked))
        assert len(drawn) == 2


SLOW = """
import atexit, os, signal, time
from fastwi.data.noise import Noise
from fastwi.engine.draws import DrawsAhead, DrawRequest

drawn, original = [], DrawRequest.draw

def draw(self):
    drawn.append(self)
    time.sleep(0.05)
    return original(self)

DrawRequest.draw = draw
ahead, asked = DrawsAhead(), [DrawRequest(Noise(seed), 0, 10, 2, 0.5) for seed in range(400)]
ahead.ask(asked)
"""


def run(code: str) -> None:
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", SLOW + code], timeout=300, capture_output=True)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")


def test_python_ends_without_the_rest_of_the_draws():
    run("atexit.register(lambda: os._exit(0 if len(drawn) < len(asked) else 3))")


def test_a_forked_process_draws_for_itself():
    """What the parent's thread was making, or held locked, is never waited for."""
    code = """
while not drawn:
    time.sleep(0.001)
ahead._lock.acquire()
child = os.fork()
if child == 0:
    signal.alarm(120)
    assert (ahead.take(asked[0]).order_N == original(asked[0]).order_N).all()
    ahead.ask(asked[:1])
    assert (ahead.take(asked[0]).order_N == original(asked[0]).order_N).all()
    os._exit(0)
ahead._lock.release()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run(code)
