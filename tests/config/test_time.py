"""Training times: one spelling, what keys take, ranges, and the step at which a drop or a warm-up ends."""

import copy
import json
import pickle
import random

import pytest
from mappings import config_from_mapping

from fastwi.config.read import config_from_yaml, read_request, read_sweep_request, sweep_from_yaml
from fastwi.config.schema import Config, OptimizerConfig, ScheduleConfig
from fastwi.config.sweep import SweepSpec, axis_value, column_type, in_parts
from fastwi.config.time import Time, iterations_of, read_time, time_at
from fastwi.config.write import sweep_to_yaml, to_yaml
from fastwi.engine.schedule import learning_rate
from fastwi.errors import ConfigError


def test_equal_times_have_one_spelling():
    assert read_time("10ep", "epochs") == read_time("10ep0it", "epochs") == 10
    assert read_time("0ep50it", "epochs") == read_time("50it", "epochs") == "50it"
    assert read_time("50it", "iterations") == 50
    assert read_time("2ep", "iterations") == "2ep"
    assert read_time("0it", "epochs") == read_time("0ep", "iterations") == 0
    assert type(read_time("0it", "epochs")) is int
    for kept in (copy.deepcopy(Time("1ep50it")), pickle.loads(pickle.dumps(Time("1ep50it")))):
        assert (kept, type(kept), kept.epochs, kept.iterations) == ("1ep50it", Time, 1, 50)


def test_iterations(seed):
    drawn = random.Random(seed)
    for _ in range(100):
        per_epoch, epochs, steps = drawn.randrange(1, 400), drawn.randrange(50), drawn.randrange(1000)
        time = read_time(f"{epochs}ep{steps}it", "epochs")
        assert iterations_of(time, per_epoch) == epochs * per_epoch + steps
        assert iterations_of(time_at(steps, per_epoch), per_epoch) == steps
        assert (time_at(steps, per_epoch) == steps // per_epoch) == (steps % per_epoch == 0)
    assert (iterations_of(7, 5), iterations_of(7, 5, "iterations")) == (35, 7)


def test_keys_take_times_everywhere():
    config = config_from_yaml("schedule: {drop_epochs: [50it, 1ep10it, 80], warmup_iterations: 2ep}")
    assert config.schedule.drop_epochs == ("50it", "1ep10it", 80)
    assert config.schedule.warmup_iterations == "2ep"
    assert config_from_yaml(to_yaml(config)) == config
    line = ["--schedule.drop_epochs=50it,1ep10it,80", "--schedule.warmup_iterations=2ep"]
    assert read_request(line, "fastwi.train").config == config
    given = {"drop_epochs": ["50it", Time("1ep10it"), "80ep"], "warmup_iterations": "2ep"}
    assert config_from_mapping({"schedule": given}) == config
    json.dumps(given)


def test_ranges_of_axes():
    spec = sweep_from_yaml("axes: {schedule.warmup_iterations: 0it..200it step 50it}")
    assert spec.axes["schedule.warmup_iterations"] == (0, 50, 100, 150, 200)
    line = "--axes.schedule.warmup_iterations=0ep..2ep"
    spec = read_sweep_request([line]).spec
    assert spec.axes["schedule.warmup_iterations"] == (0, "1ep", "2ep")
    assert sweep_from_yaml(sweep_to_yaml(spec)).axes == spec.axes


@pytest.mark.parametrize(
    "text",
    ["ep", "", "10 ep", "1it2ep", "-1it", "1.5ep", "010it", "10epochs", "3", "1ep-k", "-k"],
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match=r"schedule\.drop_epochs"):
        config_from_mapping({"schedule": {"drop_epochs": [text]}})


@pytest.mark.parametrize("text", ["0..5it", "0it..2ep", "0it..10it step 5", "0it..10it step 3it"])
def test_a_range_has_one_unit(text):
    with pytest.raises(ConfigError, match=r"warmup_iterations"):
        sweep_from_yaml(f"axes: {{schedule.warmup_iterations: {text}}}")


@pytest.mark.parametrize("drops", [["0it"], [5, "4ep"], ["50it", "50it"], ["2ep3it", "2ep"]])
def test_drops_that_cannot_be_in_order(drops):
    with pytest.raises(ConfigError, match=r"schedule\.drop_epochs"):
        config_from_mapping({"schedule": {"drop_epochs": drops}})
    config_from_mapping({"schedule": {"drop_epochs": ["50it", 2]}})  # may be, by the length of an epoch


def test_axes_with_times_are_text_in_tables():
    def in_tables(path, *values):
        spec = SweepSpec(Config(), {path: values})
        return column_type(spec, path), [axis_value(spec, path, each) for each in values]

    mixed = (read_time(each, "iterations") for each in (0, "2ep", 50))
    assert in_tables("schedule.warmup_iterations", 0, 50) == (int, [0, 50])
    assert in_tables("schedule.warmup_iterations", *mixed) == (str, ["0it", "2ep", "50it"])
    assert in_tables("schedule.drop_epochs", (), (Time("5it"), 80)) == (str, [(), ("5it", "80ep")])


def test_times_within_epochs_make_parts_of_epochs():
    for name in ("k", "s", "after"):
        assert in_parts(SweepSpec(Config(), {f"experiment.{name}": (1, Time("2it"))}))
    assert not in_parts(SweepSpec(Config(), {"experiment.s": (1, Time("8ep-k"))}))


def test_a_rate_drops_and_warms_up_at_iterations():
    optimizer = OptimizerConfig(learning_rate=1.0)
    dropped = ScheduleConfig(drop_epochs=(Time("7it"), 1, Time("1ep3it")), drop_factor=0.5)
    rates = [learning_rate(i, 10, optimizer, dropped) for i in range(15)]
    assert rates == [1.0] * 7 + [0.5] * 3 + [0.25] * 3 + [0.125] * 2
    warm = ScheduleConfig(drop_epochs=(), warmup_iterations=Time("1ep2it"))
    assert [learning_rate(i, 3, optimizer, warm) for i in range(6)] == [0, 0.2, 0.4, 0.6, 0.8, 1]
