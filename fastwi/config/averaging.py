"""What averages are made of, in numbers: the weights of momentum, and the outer optimizer of rounds."""

from collections.abc import Sequence

from fastwi.config.schema import ExperimentConfig

MOMENTUM_TREATMENTS = ("reset", "average", "keep")


def momentum_weights(momentum: str, weights: Sequence[float]) -> tuple[float, ...]:
    """The weights by which the momentum of an average with these weights is summed.

    momentum: "reset" to zero, the same weights ("average"), or "keep" that of the first member whose weight is not 0.
    Raises ValueError for another.
    """
    if momentum not in MOMENTUM_TREATMENTS:
        raise ValueError(f"momentum treatment {momentum!r} is not one of {', '.join(MOMENTUM_TREATMENTS)}")
    if momentum == "average":
        return tuple(weights)
    first = next((i for i, weight in enumerate(weights) if weight), -1) if momentum == "keep" else -1
    return tuple(float(i == first) for i in range(len(weights)))


def outer_coefficients(experiment: ExperimentConfig) -> list[tuple[float, ...]]:
    """What theta_r, the average of each round r, is made of: coefficients of theta_0 and of the means m_1 to m_r.

    theta_0 is the parent where it is cloned, m_r the mean of the children at the end of round r. The outer optimizer
    is SGD on the gradient theta_(r-1) - m_r (Douillard et al. 2023, DiLoCo, algorithm 1; as torch.optim.SGD without
    dampening), written on the coefficients. With outer_step 1 and no outer momentum theta_r is m_r exactly.
    """
    step, momentum = experiment.outer_step, experiment.outer_momentum
    theta, velocity, found = [1.0], [0.0], []
    for _ in range(experiment.rounds):
        theta, gradient = [*theta, 0.0], [*theta, -1.0]
        velocity = [momentum * v + g for v, g in zip([*velocity, 0.0], gradient, strict=True)]
        update = velocity
        if experiment.outer_nesterov:
            update = [g + momentum * v for v, g in zip(velocity, gradient, strict=True)]
        theta = [t - step * u for t, u in zip(theta, update, strict=True)]
        found.append(tuple(theta))
    return found
