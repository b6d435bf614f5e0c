"""The learning rate over the global iteration (paper, Appendix A)."""

from fastwi.config.schema import OptimizerConfig, ScheduleConfig
from fastwi.config.time import iterations_of


def learning_rate(iteration: int, per_epoch: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of global iteration i, which counts from 0 over all epochs.

    With the base rate l = optimizer.learning_rate it is l * i / t in a warm-up of t iterations, and then
    l * drop_factor ** (number of drop_epochs reached).
    """
    rate, warmup = optimizer.learning_rate, iterations_of(schedule.warmup_iterations, per_epoch, "iterations")
    if iteration < warmup:
        return rate * iteration / warmup
    drops = (iterations_of(drop, per_epoch) for drop in schedule.drop_epochs)
    return rate * schedule.drop_factor ** sum(iteration >= drop for drop in drops)
