"""The learning rate over the global iteration."""

import random
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from fastwi.config.schema import OptimizerConfig, ScheduleConfig
from fastwi.config.time import Time
from fastwi.engine.schedule import FurtherSchedule, deciding_rates, learning_rate

OPTIMIZER = OptimizerConfig(learning_rate=0.4)


def rates(iterations, per_epoch, schedule):
    return [learning_rate(i, per_epoch, OPTIMIZER, schedule) for i in iterations]


def torch_rates(steps, scheduler):
    """The rates of `steps` steps, by a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its own schedulers in a deprecated way
        scheduled = scheduler(optimizer)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduled.step()
    return found


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_curves_after_a_warm_up_are_torchs(name, seed):
    draw = random.Random(seed)
    for warm, final in ((0, 0.0), (draw.randint(1, 9), draw.uniform(0, 1))):
        end, per_epoch = draw.randint(3, 6), draw.randint(4, 9)
        span = end * per_epoch - warm

        def after(optimizer, span=span, final=final):
            if name == "cosine":
                return lr_scheduler.CosineAnnealingLR(optimizer, span, eta_min=final * 0.4)
            return lr_scheduler.LinearLR(optimizer, 1.0, final if name == "linear" else 1.0, span)

        def both(optimizer, warm=warm, after=after):
            if not warm:
                return after(optimizer)
            up = lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, i / warm))
            return lr_scheduler.SequentialLR(optimizer, [up, after(optimizer)], [warm])

        schedule = ScheduleConfig(name, end=end, final_factor=final, warmup_iterations=warm)
        expected = torch_rates(end * per_epoch + 1, both)
        assert rates(range(end * per_epoch + 1), per_epoch, schedule) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert rates([10**6], per_epoch, schedule) == pytest.approx(expected[-1:], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warm", [0, 1, 7])
def test_one_cycle_is_torchs(warm, seed):
    draw = random.Random(seed)
    end, per_epoch, final = draw.randint(3, 6), draw.randint(5, 9), draw.uniform(0.001, 0.5)
    steps = end * per_epoch
    expected = torch_rates(
        steps - 1,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 0.4, steps, pct_start=warm / steps if warm > 1 else 0.3, cycle_momentum=False,
            final_div_factor=1 / (25 * final),
        ),
    )  # fmt: skip
    schedule = ScheduleConfig("one_cycle", end=end, final_factor=final, warmup_iterations=warm)
    found = rates(range(steps + 5), per_epoch, schedule)
    assert found[steps - 1 :] == pytest.approx([0.4 * final] * 6, rel=1e-9)
    if warm == 1:  # torch divides by 0 there
        assert (found[0], found[1] < found[0]) == (0.4, True)
    else:
        assert found[: steps - 1] == pytest.approx(expected, rel=1e-9)


def test_further_training():
    keep = {"name": "cosine", "end": 8, "warmup_iterations": 3}
    plain = rates(range(100), 5, ScheduleConfig(**keep))
    for at, expected in {
        "keep": plain[15:30],
        "restart": plain[:15],
        "anneal": [plain[15] * (1 - 0.75 * i / 15) for i in range(15)],
    }.items():
        more = {"final_factor": 0.25} if at == "anneal" else {}
        schedule = FurtherSchedule(**keep, **more, at_average=at, first=15, last=30)
        start = rates([15], 5, ScheduleConfig(**keep, **more))[0]
        found = rates(range(15, 30), 5, schedule)
        assert found == pytest.approx([rate * start / plain[15] for rate in expected], rel=1e-9)


def test_warm_ups_of_two_heights_that_end_at_one_rate_are_told_apart():
    """The higher one has dropped by then."""
    found = []
    for full, drops in ((0.4, (1,)), (0.2, ())):
        optimizer = OptimizerConfig(learning_rate=full)
        schedule = ScheduleConfig(drop_epochs=drops, drop_factor=0.5, warmup_iterations=4)
        every = [learning_rate(i, 3, optimizer, schedule) for i in (3, 4, 5)]
        found.append((every[0], every[1:], deciding_rates(3, 5, 3, optimizer, schedule)))
    (high, *ends), (low, *other_ends) = found
    assert (high, ends[0]) == (2 * low, other_ends[0])
    assert ends[1] != other_ends[1]


def test_deciding_rates_decide_all(seed):
    """Of spans of many schedules: equal where the rates are, different where they are not."""
    draw = random.Random(seed)
    known = {}
    for _ in range(4000):
        schedule = FurtherSchedule(
            name=draw.choice(["steps", "cosine", "linear", "one_cycle", "constant"]),
            drop_epochs=draw.choice([(), (1,), (1, 2), (Time("4it"), Time("5it"))]),
            drop_factor=draw.choice([0.5, 1.0]),
            warmup_iterations=draw.choice([0, 0, 2, 3, 4, 7]),
            end=draw.choice([2, 3]),
            final_factor=draw.choice([0.0, 0.5, 1.0]),
            at_average=draw.choice(["keep", "restart", "anneal"]),
            first=draw.choice([0, 3, 6]),
            last=9,
        )
        epoch = draw.randrange(schedule.first // 3, 3)
        every = tuple(rates(range(3 * epoch, 3 * epoch + 3), 3, schedule))
        deciding = tuple(deciding_rates(3 * epoch, 3 * epoch + 2, 3, OPTIMIZER, schedule))
        assert known.setdefault((epoch, deciding), every) == every
        assert known.setdefault((epoch, every, "of"), deciding) == deciding
    assert len(known) > 100
