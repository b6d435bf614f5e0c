"""The learning rate over the global iteration."""

import pytest

from fastwi.config.schema import OptimizerConfig, ScheduleConfig
from fastwi.engine.schedule import learning_rate

OPTIMIZER = OptimizerConfig(learning_rate=0.4)


def test_drops():
    schedule = ScheduleConfig(drop_epochs=(2, 3), drop_factor=0.1)
    rates = [learning_rate(i, 10, OPTIMIZER, schedule) for i in (0, 19, 20, 29, 30, 500)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rel=1e-12)


def test_warm_up():
    schedule = ScheduleConfig(drop_epochs=(), warmup_iterations=8)
    rates = [learning_rate(i, 3, OPTIMIZER, schedule) for i in range(10)]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(8)] + [0.4, 0.4], rel=1e-12)
