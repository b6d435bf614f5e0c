"""Timing of contestants in turn, so that whatever disturbs the machine disturbs them all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of each counted round of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """The first and third quartile, inclusive."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def range_s(self) -> tuple[float, float]:
        """The fastest and the slowest round."""
        return min(self.seconds), max(self.seconds)


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    warmups: int = 2,
) -> dict[str, Timing]:
    """Run every contestant once a round, in an order drawn anew each round; count all but the warm-up rounds.

    `prepare` names what is to be done before a contestant's run, untimed: fresh inputs, say. On a GPU, times
    are those between two events on the current stream; elsewhere wall-clock time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order, draw = list(contestants), random.Random(0)
    for round_number in range(warmups + rounds):
        draw.shuffle(order)
        for name in order:
            if prepare is not None and name in prepare:
                prepare[name]()
            took = _time(contestants[name], device)
            if round_number >= warmups:
                seconds[name].append(took)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3
