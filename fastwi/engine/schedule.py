"""The learning rate over the global iteration (paper, Appendix A)."""

from fastwi.config.schema import OptimizerConfig, ScheduleConfig


def learning_rate(iteration: int, per_epoch: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of global iteration i, which counts from 0 over all epochs.

    With the base rate l = optimizer.learning_rate it is l * i / t in a warm-up of t iterations, and then
    l * drop_factor ** (number of drop_epochs reached).
    """
    rate = optimizer.learning_rate
    if iteration < schedule.warmup_iterations:
        return rate * iteration / schedule.warmup_iterations
    epoch = iteration // per_epoch
    return rate * schedule.drop_factor ** sum(epoch >= drop for drop in schedule.drop_epochs)
