"""The plan of a run: which epochs, of which networks, at what cost."""

import dataclasses

import pytest
from fastwi.experiment.plan import Stage, Step, child_seeds, networks, plan, work

from fastwi.config.schema import Config, ExperimentConfig


def make(**experiment) -> Config:
    return Config(experiment=ExperimentConfig(**experiment))


def test_steps():
    assert plan(ExperimentConfig(k=2, s=1, after=2)) == (
        Step(Stage.PARENT, 0), Step(Stage.PARENT, 1), Step(Stage.CHILDREN, 2), Step(Stage.INTERPOLATION, 3),
        Step(Stage.AFTER, 3), Step(Stage.AFTER, 4),
    )  # fmt: skip
    assert plan(ExperimentConfig(k=0, s=0, after=0)) == (Step(Stage.INTERPOLATION, 0),)


@pytest.mark.parametrize(("k", "s", "after"), [(10, 10, 10), (0, 3, 1), (4, 0, 2), (1, 1, 0)])
def test_every_epoch_once(k, s, after):
    epochs = [step.epoch for step in plan(ExperimentConfig(k=k, s=s, after=after)) if step.stage != "interpolation"]
    assert epochs == list(range(k + s + after))


def test_networks():
    config = make(children=3)
    children = ("child 1", "child 2", "child 3")
    assert networks(Step(Stage.PARENT, 0), config) == ("parent",)
    assert networks(Step(Stage.CHILDREN, 0), config) == children
    assert networks(Step(Stage.INTERPOLATION, 0), config) == ("average", *children)
    assert networks(Step(Stage.AFTER, 0), config) == ("average",)
    assert networks(Step(Stage.AFTER, 0), make(children=2, continue_children=True)) == ("average", *children[:2])


def test_child_seeds():
    assert child_seeds(make(children=3)) == (1, 2, 3)
    config = make(children=2)
    seeds = dataclasses.replace(config.seeds, child_noise=(9, 4))
    assert child_seeds(dataclasses.replace(config, seeds=seeds)) == (9, 4)


def test_work():
    config = make(children=3)
    assert dataclasses.astuple(work(Step(Stage.PARENT, 0), config, 500, 100)) == (500, 100)
    assert dataclasses.astuple(work(Step(Stage.CHILDREN, 0), config, 500, 100)) == (1500, 300)
    assert dataclasses.astuple(work(Step(Stage.INTERPOLATION, 0), config, 500, 100)) == (0, 4 * 700)
    few = make(children=3, recompute_images=200)
    assert dataclasses.astuple(work(Step(Stage.INTERPOLATION, 0), few, 500, 100)) == (0, 4 * 400)
