"""Values that are allowed one by one and impossible together."""

import pytest

from fastwi.config.check import check_config
from fastwi.config.read import config_from_mapping, read_request
from fastwi.config.schema import Config
from fastwi.errors import ConfigError
from fastwi.models.names import MODEL_NAMES

IMPOSSIBLE = [
    ({"experiment": {"weights": [1.0]}}, "experiment.weights: 1 for 2 children; give 2, or none"),
    ({"experiment": {"weights": [0.5, 0.4]}}, "experiment.weights: sum to 0.9; make them sum to 1"),
    (
        {"experiment": {"weights": [0.5, 0.5 + 2e-6]}},
        "experiment.weights: sum to 1.000002; make them sum to 1",
    ),
    ({"seeds": {"child_noise": [1, 2, 3]}}, "seeds.child_noise: 3 for 2 children; give 2, or none"),
    (
        {"seeds": {"child_noise": [7, 7]}},
        "seeds.child_noise: 7 is given twice, and siblings must differ; change one",
    ),
    (
        {"schedule": {"drop_epochs": [80, 80]}},
        "schedule.drop_epochs: 80 follows 80; give them strictly increasing",
    ),
    (
        {"schedule": {"drop_epochs": [9, 5, 7]}},
        "schedule.drop_epochs: 5 follows 9; give them strictly increasing",
    ),
    (
        {"experiment": {"k": 0, "s": 0, "after": 0}},
        "experiment: k, s and after are all 0, so nothing is trained; make one at least 1",
    ),
    (
        {"data": {"train_images": 100}},
        "optimizer.batch_size: 128 is more than data.train_images, 100; lower it",
    ),
    (
        {"data": {"train_images": 200}, "experiment": {"recompute_images": 201}},
        "experiment.recompute_images: 201 is more than data.train_images, 200; lower it, or give 0 for all",
    ),
    (
        {"model": {"name": "ResNet-20"}},
        "model.name: 'ResNet-20' is no known model; did you mean resnet20? valid: "
        f"{', '.join(MODEL_NAMES)}, or your own as package.module:attribute",
    ),
    ({"engine": {"device": "gpu"}}, "engine.device: 'gpu' is none of auto, cpu, cuda, cuda:N; give one"),
    (
        {"engine": {"device": "cuda:01"}},
        "engine.device: 'cuda:01' is none of auto, cpu, cuda, cuda:N; give one",
    ),
    ({"run": {"name": "a/b"}}, "run.name: 'a/b' is not the name of one directory; leave out / and \\"),
    ({"run": {"name": ".."}}, "run.name: '..' is not the name of one directory; leave out / and \\"),
    ({"run": {"name": "x" * 101}}, "run.name: 101 characters; give at most 100"),
    ({"run": {"directory": ""}}, "run.directory: is empty; give a directory, such as runs"),
    ({"data": {"path": ""}}, "data.path: is empty; give a directory that python -m data_prep wrote"),
]


@pytest.mark.parametrize(("mapping", "message"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "mapping",
    [
        {"experiment": {"weights": [0.3, 0.7 + 5e-7]}},
        {"experiment": {"weights": [1.5, -0.5]}},  # the line beyond B
        {"experiment": {"k": 0, "s": 0, "after": 1}},
        {"seeds": {"parent_noise": 5, "child_noise": [5, 6], "average_noise": 5}},  # their epochs differ
        {"experiment": {"children": 3}, "seeds": {"child_noise": [9, 1, 4]}},
        {"data": {"train_images": 128}, "experiment": {"recompute_images": 128}},
        {"experiment": {"recompute_images": 5}},
        {"engine": {"device": "cuda:3"}},
        {"run": {"name": "a b.c-1"}},
        {"schedule": {"drop_epochs": []}},
    ],
)
def test_a_possible_combination_passes(mapping: dict) -> None:
    check_config(config_from_mapping(mapping))


def test_all_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_request(["--experiment.weights", "0.5", "--schedule.drop_epochs", "9,5", "--data.path="], "fastwi.train")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "experiment.weights",
        "schedule.drop_epochs",
        "data.path",
    ]


def test_the_defaults_pass() -> None:
    check_config(Config())
