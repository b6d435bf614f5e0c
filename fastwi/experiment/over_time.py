"""Averages over time: of the states of one trajectory after its epochs. Nothing is trained on them."""

from collections.abc import Iterator

from fastwi.config.schema import TrajectoryConfig

_SMALLEST = 2.0**-24  # of the newest state's weight: what is below is lost in float32's rounding


def weights_over_time(config: TrajectoryConfig, epoch: int, states: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The averages of a trajectory after `epoch`: the name of each, and weights of its last states, oldest first.

    states: how many the trajectory has up to there, one after each epoch. An average of one state alone is left out.

    lawa: the mean of the last `window` states (Kaddour 2022, arXiv 2209.14981). swa: the mean of all after epoch
    `begin` (Izmailov et al. 2018, algorithm 1 with constant rate). ema: avg_t = d avg_(t-1) + (1 - d) w_t with
    Adam's correction for its start, d = `decay`.
    """
    for name in config.averages:
        count, decay = config.window, 1.0
        if name == "swa":
            count = epoch - config.begin
        elif name == "ema":
            count, decay = states, config.decay
        weights = [decay**age for age in range(max(0, min(count, states)))]
        weights = [weight for weight in reversed(weights) if weight >= _SMALLEST]
        if len(weights) > 1:
            total = sum(weights)
            yield name, tuple(weight / total for weight in weights)
