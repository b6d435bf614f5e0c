"""Values that are each allowed and cannot be run together. All are named at once, each in one line."""

import itertools
import math
import re
from collections import Counter
from pathlib import PurePosixPath

from fastwi.config.schema import Config
from fastwi.config.wording import show
from fastwi.errors import ConfigError
from fastwi.models.names import model_problem

MOST_EPOCHS = 1_000_000
"""Of all networks of a run together. Steps, measurements and progress are lists as long."""

WEIGHT_SUM_TOLERANCE = 1e-6
LONGEST_RUN_NAME = 100  # characters; with hash and suffixes it stays below a file system's 255

_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")


def check_config(config: Config) -> None:
    """Refuse a configuration that no run could follow.

    Types, bounds and choices of single values are the reader's business and are taken as right here. Whether
    the dataset and the device exist is found out by those who open them.

    Raises:
        ConfigError: the message has one line for each problem.
    """
    problems = [
        *_run_problems(config),
        *_experiment_problems(config),
        *_schedule_problems(config),
        *_data_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _run_problems(config: Config) -> list[str]:
    problems = []
    name = config.run.name
    if name and (PurePosixPath(name).name != name or name == ".." or "\\" in name):
        problems.append(f"run.name: {show(name)} is not the name of one directory; leave out / and \\")
    if len(name) > LONGEST_RUN_NAME:
        problems.append(f"run.name: {len(name)} characters; give at most {LONGEST_RUN_NAME}")
    if not config.run.directory:
        problems.append("run.directory: is empty; give a directory, such as runs")
    model = model_problem(config.model.name, config.model.width)
    if model is not None:
        problems.append(model)
    if not _DEVICE.fullmatch(config.engine.device):
        problems.append(f"engine.device: {show(config.engine.device)} is none of auto, cpu, cuda, cuda:N; give one")
    return problems


def _experiment_problems(config: Config) -> list[str]:
    problems = []
    experiment, noise = config.experiment, config.seeds.child_noise
    if experiment.k + experiment.s + experiment.after < 1:
        problems.append("experiment: k, s and after are all 0, so nothing is trained; make one at least 1")
    children = experiment.children
    trained_on = 1 + children * experiment.continue_children
    shares = {"k": experiment.k, "s": experiment.s * children, "after": experiment.after * trained_on}
    if sum(shares.values()) > MOST_EPOCHS:
        most = max(shares, key=lambda name: shares[name])
        problems.append(
            f"experiment.{most}: {getattr(experiment, most):,}; that makes {sum(shares.values()):,} epochs of all"
            f" networks together, and {MOST_EPOCHS:,} is the most that can be planned; lower it"
        )
    if experiment.weights:
        count, total = len(experiment.weights), math.fsum(experiment.weights)
        if count != children:
            problems.append(f"experiment.weights: {count} for {children} children; give {children}, or none")
        elif abs(total - 1.0) > WEIGHT_SUM_TOLERANCE:
            problems.append(f"experiment.weights: sum to {total:.9g}; make them sum to 1")
    if experiment.children_rate_factor != 1 and not experiment.continue_children:
        problems.append(
            "experiment.children_rate_factor: the children are not trained on; set continue_children: true"
        )
    if noise and len(noise) != children:
        problems.append(f"seeds.child_noise: {len(noise)} for {children} children; give {children}, or none")
    twice = next((seed for seed, count in Counter(noise).items() if count > 1), None)
    if twice is not None:
        problems.append(f"seeds.child_noise: {twice} is given twice, and siblings must differ; change one")
    return problems


def _schedule_problems(config: Config) -> list[str]:
    drops = config.schedule.drop_epochs
    for earlier, later in itertools.pairwise(drops):
        if later <= earlier:
            return [f"schedule.drop_epochs: {later} follows {earlier}; give them strictly increasing"]
    return []


def _data_problems(config: Config) -> list[str]:
    problems = []
    if not config.data.path:
        problems.append("data.path: is empty; give a directory that python -m data_prep wrote")
    images = config.data.train_images
    if images and config.optimizer.batch_size > images:
        problems.append(
            f"optimizer.batch_size: {config.optimizer.batch_size} is more than data.train_images, {images}; lower it"
        )
    if images and config.experiment.recompute_images > images:
        problems.append(
            f"experiment.recompute_images: {config.experiment.recompute_images} is more than"
            f" data.train_images, {images}; lower it, or give 0 for all"
        )
    return problems
