"""The learning rate over the global iteration, which counts from 0 over all epochs.

With the base rate l and a warm-up of t iterations it is l * i / t at iteration i < t (paper, Appendix A). After that:

- steps: l * drop_factor ** (number of drop_epochs reached); constant: l.
- cosine, linear: from l at iteration t to final_factor * l at the end, as torch's CosineAnnealingLR and LinearLR.
- one_cycle: from l / 25 up to l and down to final_factor * l, each by half a cosine, as torch's OneCycleLR (Smith,
  Topin 2018). The rise takes t iterations, or 30 % of all where t is 0; it replaces the linear warm-up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastwi.config.schema import OptimizerConfig, ScheduleConfig
from fastwi.config.time import iterations_of

CURVES = ("cosine", "linear", "one_cycle")
"""Schedules that go down to their `end`."""
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_RISE = 0.3


@dataclass(frozen=True)
class FurtherSchedule(ScheduleConfig):
    """The schedule of networks that train on from an interpolation: `at_average` counts from there.

    first, last: the iterations of the interpolation and of the end of further training.
    """

    first: int = 0
    last: int = 0


def learning_rate(iteration: int, per_epoch: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of an iteration, with `per_epoch` iterations in an epoch.

    Rates on a curve have 12 digits: they are the same on all machines, and so are the names that are made of them.
    """
    if isinstance(schedule, FurtherSchedule):
        if schedule.at_average == "anneal":
            progress = (iteration - schedule.first) / (schedule.last - schedule.first)
            rate = _rate(schedule.first, per_epoch, optimizer.learning_rate, schedule)
            return _rounded(rate * _linear(progress, 1.0, schedule.final_factor))
        if schedule.at_average == "restart":
            iteration -= schedule.first
    return _rate(iteration, per_epoch, optimizer.learning_rate, schedule)


def deciding_rates(
    first: int, last: int, per_epoch: int, optimizer: OptimizerConfig, schedule: ScheduleConfig
) -> Sequence[float | str]:
    """What decides the rates of the iterations `first` to `last`, in few numbers: for names.

    One rate where all are equal. In a linear warm-up from iteration 0 the last rate, the full one and the length, as
    the iteration's number is in the name. Else every rate.
    """

    def rate(iteration: int) -> float:
        return learning_rate(iteration, per_epoch, optimizer, schedule)

    rise, begun = _rise(per_epoch, schedule), 0
    if isinstance(schedule, FurtherSchedule):
        begun = schedule.first if schedule.at_average == "restart" else 0
        rise = 0 if schedule.at_average == "anneal" else rise
    risen = max(first, math.ceil(begun + rise))
    level = risen > last or rate(risen) == rate(last)  # no rate after the rise is higher than the one before it
    if level and risen == first:
        return [rate(last)]
    if level and schedule.name != "one_cycle" and not begun:
        return [rate(last), optimizer.learning_rate, rise]
    every = [rate(iteration) for iteration in range(first, last + 1)]
    return every[:1] if len(set(every)) == 1 else ["each", *every]


def _rise(per_epoch: int, schedule: ScheduleConfig) -> float:
    """Iterations in which the rate rises."""
    warmup = iterations_of(schedule.warmup_iterations, per_epoch, "iterations")
    if schedule.name == "one_cycle" and not warmup:
        return _ONE_CYCLE_RISE * iterations_of(schedule.end, per_epoch)
    return warmup


def _rate(iteration: int, per_epoch: int, full: float, schedule: ScheduleConfig) -> float:
    """The rate of an iteration of the schedule. `full`: l."""
    rise = _rise(per_epoch, schedule)
    end = iterations_of(schedule.end, per_epoch)
    if schedule.name == "one_cycle":
        top = rise - 1  # torch's phases end at steps, which may be fractions
        if iteration < top:
            return _rounded(full * _cosine(iteration / top, _ONE_CYCLE_START, 1.0))
        progress = (iteration - top) / (end - 1 - top) if iteration < end - 1 else 1.0
        return _rounded(full * _cosine(progress, 1.0, schedule.final_factor))
    if iteration < rise:
        return full * iteration / rise
    if schedule.name == "constant":
        return full
    if schedule.name == "steps":
        drops = (iterations_of(drop, per_epoch) for drop in schedule.drop_epochs)
        return full * schedule.drop_factor ** sum(iteration >= drop for drop in drops)
    progress = (iteration - rise) / (end - rise) if iteration < end else 1.0
    curve = _cosine if schedule.name == "cosine" else _linear
    return _rounded(full * curve(progress, 1.0, schedule.final_factor))


def _linear(progress: float, start: float, end: float) -> float:
    return start + (end - start) * progress


def _cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _rounded(rate: float) -> float:
    return float(f"{rate:.12g}")
