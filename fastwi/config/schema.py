"""The declaration of every key of a run: a frozen dataclass a section, a field a key.

Reader, command line, `--help`, YAML writer, hash, axes and columns follow from it. A default is what the paper says,
where it says it (Iyer et al. 2024, Appendix A), else this project's choice.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastwi.config.time import TIME_OR_TO, AnyTime, Time, parts_of
from fastwi.config.values import Key, keys_of, option
from fastwi.models.names import model_problem

MOST_EPOCHS = 1_000_000
"""Of all networks of a run together. Steps, measurements and progress are lists as long."""

_NAME = r"([^./\\\p{Cc}\p{Zl}\p{Zp}][^/\\\p{Cc}\p{Zl}\p{Zp}]{0,99})?"
_NAME_BYTES = 200  # 100 letters of Chinese or Japanese take 300
_NAME_RULE = "in quotes if it is a number, 100 characters (200 bytes) at most without / and \\, no dot first"
_DEVICE = "auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?"


def directory_name(whose: str, empty: str) -> Any:
    """The name of a run's or a sweep's directory, as a field. `empty`: what an empty one stands for.

    With what is added to it, as in `.NAME.yaml.0123abcd.tmp`, it stays below the 255 bytes of a file system.
    """
    text = f"name of the {whose} directory, {_NAME_RULE}; empty: {empty}"
    return option("", text, pattern=_NAME, form=f"a name of a directory, {_NAME_RULE}", most_bytes=_NAME_BYTES)


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes."""

    name: str = directory_name("run's", "the name of the configuration file and a hash")
    directory: str = option("runs", "directory that holds the runs", filled=True)
    tensorboard: bool = option(False, "write TensorBoard event files too; needs fastwi[tensorboard]; not for sweeps")


@dataclass(frozen=True)
class DataConfig:
    """The dataset: a directory that `python -m data_prep` wrote."""

    path: str = option("data/cifar10", "directory with train.beton, test.beton and card.json", filled=True)
    train_images: int = option(0, "train on this many images, drawn evenly over classes; 0: all", low=0)
    test_images: int = option(0, "evaluate on this many test images, likewise; 0: all", low=0)
    streaming: str = option(
        "auto",
        "where images are: in memory, or decoded from the disk when needed; auto: in memory where they are raw, "
        "of one size and take at most half of what is free",
        choices=("auto", "resident", "streamed"),
    )
    decoder: str = option(
        "auto",
        "decoder of JPEGs: reference (Pillow's) or ffcv (FFCV's), whose pixels differ; auto: reference",
        choices=("auto", "ffcv", "reference"),
    )
    image_size: int = option(
        0,
        "side to which images of another size are cropped (centered square) and resized; 0: the size in card.json, "
        "that of the first training image",
        unit="pixels",
        low=0,
        high=4096,
    )
    last_batch: str = option(
        "drop",
        "images that are left at the end of an epoch's order, fewer than a batch: left out, or a step of their own; "
        "and so where batch-norm statistics are recomputed",
        choices=("drop", "keep"),
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation (paper, Appendix A): random crop after constant padding, then horizontal flip."""

    padding: int = option(4, "constant 0 added on each side before the random crop", unit="pixels", low=0, high=64)
    flip: float = option(0.5, "probability of a horizontal flip", low=0.0, high=1.0)


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str = option(
        "resnet20", "name in the model registry, or your own: package.module:attribute or file.py:attribute"
    )
    width: float = option(1.0, "multiplier of the network's channels; not for your own", low=0.0625, high=64)
    weights: str = option(
        "",
        "state dict (.pt, .safetensors) or checkpoint of one network that every parent starts from, with zero "
        "momentum; empty: drawn from seeds.init",
    )
    initialisation: str = option(
        "default",
        "distribution of initial weights; kaiming_normal: PyTorch's kaiming_normal_ (fan in) for convolutions and "
        "linear layers; open_lth: that, and U(0, 1) for weights of batch norms; default: the network's own",
        choices=("default", "kaiming_normal", "open_lth"),
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum and weight decay."""

    batch_size: int = option(128, "images of a step", unit="images", low=1)
    learning_rate: float = option(0.1, "initial learning rate l", low=0.0)
    momentum: float = option(0.9, "momentum", low=0.0, high=0.999999)
    weight_decay: float = option(1e-4, "L2 penalty, on every parameter", low=0.0)
    nesterov: bool = option(False, "Nesterov's form of momentum")
    ema_decay: float = option(
        0.0,
        "decay an iteration of a moving average of the weights, kept and measured beside every network; 0: none",
        low=0.0,
        high=0.999999,
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the global epoch (paper, Appendix A)."""

    name: str = option(
        "steps",
        "the rate after the warm-up. steps: multiplied at drop_epochs; cosine, linear: from l down to final_factor * "
        "l at `end`; one_cycle: by cosines up from l / 25 in place of the warm-up (30 % of the iterations to `end` "
        "where that is 0), and down; constant: l",
        choices=("steps", "cosine", "linear", "one_cycle", "constant"),
    )
    drop_epochs: tuple[AnyTime, ...] = option(
        (80, 120), "times at which the rate is multiplied", unit="epochs", low=1
    )
    drop_factor: float = option(0.1, "factor of each drop", low=0.0, high=1.0)
    warmup_iterations: AnyTime = option(
        0, "t of a linear warm-up: the rate at iteration i < t is (i / t) * l", unit="iterations", low=0
    )
    end: AnyTime = option(
        160, "where cosine, linear and one_cycle end; the last rate stays from there on", unit="epochs", low=1
    )
    final_factor: float = option(
        0.0, "last rate of cosine, linear, one_cycle and of anneal, as a factor of the first", low=0.0, high=1.0
    )
    at_average: str = option(
        "keep",
        "rates of the average's further training, and of children that are trained on. keep: those of the global "
        "epoch; restart: the schedule from its start; anneal: linearly down from the rate at the average to "
        "final_factor times it at the last epoch",
        choices=("keep", "restart", "anneal"),
    )


@dataclass(frozen=True)
class ExperimentConfig:
    """Parent, children, average (paper, Figure 1)."""

    k: AnyTime = option(10, "epochs that the parent trains before cloning", unit="epochs", low=0)
    s: AnyTime = option(
        10, "epochs that each child trains before averaging; 160ep-k: up to 160 epochs in all", unit="epochs", low=0,
        pattern=TIME_OR_TO,
    )  # fmt: skip
    after: AnyTime = option(10, "epochs that the average trains on", unit="epochs", low=0)
    children: int = option(2, "children of the parent", low=2, high=4096)
    weights: tuple[float, ...] = option(
        (), "weights of the average, one a child, summing to 1; empty: the plain mean", repeats=True
    )
    batch_norm: str = option(
        "average",
        "statistics that the average trains on with: the children's averaged, or recomputed on training data",
        choices=("average", "recompute"),
    )
    momentum: str = option(
        "reset",
        "momentum that the average starts with: zero, the children's averaged, or that of the first child whose "
        "weight is not 0",
        choices=("reset", "average", "keep"),
    )
    child_momentum: str = option(
        "inherit", "momentum that a child's training starts with: the parent's, or zero", choices=("inherit", "reset")
    )
    rounds: int = option(
        1,
        "times that children are cloned, trained for s epochs and averaged; k + rounds s epochs in all",
        low=1,
        high=1000,
    )
    outer_step: float = option(
        1.0,
        "of each round: the average is its start + outer_step x (the children's mean - its start); 1: their mean",
        low=0.0,
        high=10.0,
    )
    outer_momentum: float = option(0.0, "momentum of the outer step over rounds", low=0.0, high=0.999999)
    outer_nesterov: bool = option(False, "Nesterov's form of the outer momentum")
    pull: float = option(
        1.0,
        "children of a later round start from (1 - pull) x their own weights + pull x the average; 1: its clones",
        low=0.0,
        high=1.0,
    )
    round_momentum: str = option(
        "average",
        "momentum that children of a later round start with: as the average's (experiment.momentum), or their own",
        choices=("average", "own"),
    )
    continue_parent: str = option(
        "none",
        "train the parent on alone as well, to compare the averages with it: for as many epochs as each child and "
        "the average have, or for as many as all of these together",
        choices=("none", "each", "total"),
    )
    continue_children: bool = option(False, "train the children on as well, to compare the average with them")
    children_rate_factor: float = option(
        1.0,
        "learning rate of children that are trained on (continue_children), as a factor; 0.1: as if it dropped there",
        low=0.0,
        high=1.0,
    )
    recompute_images: int = option(
        0,
        "training images over which batch-norm statistics are recomputed, in whole batches, at least one (with "
        "data.last_batch: keep, all of them); 0: all",
        unit="images",
        low=0,
    )
    measure: tuple[str, ...] = option(
        ("own",),
        "batch-norm statistics with which every network is measured after every epoch; recomputed ones cost a pass "
        "over recompute_images more. At interpolation those of sweep.measure too",
        choices=("own", "recomputed"),
    )


@dataclass(frozen=True)
class TrajectoryConfig:
    """Averages over time of a network's own states, measured beside it after every epoch; they change no training."""

    averages: tuple[str, ...] = option(
        (),
        "lawa: the mean of the last `window` epochs' states; swa: of all after epoch `begin`; ema: moving average "
        "with `decay` an epoch; empty: none",
        choices=("lawa", "swa", "ema"),
    )
    networks: tuple[str, ...] = option(
        ("parent", "child", "average"), "whose states; a child's go on from its parent's",
        choices=("parent", "child", "average"), filled=True,
    )  # fmt: skip
    window: int = option(5, "states of lawa", unit="epochs", low=2, high=1000)
    begin: int = option(0, "epoch after which swa begins", unit="epochs", low=0)
    decay: float = option(0.8, "decay of ema an epoch", low=0.0, high=0.9999)


@dataclass(frozen=True)
class SeedConfig:
    """All randomness of a run. Draws are pure functions of (seed, stream, epoch)."""

    init: int = option(0, "seed of the parent's initial weights", low=0)
    parent_noise: int = option(0, "noise seed of the parent", low=0)
    child_noise: tuple[int, ...] = option((), "noise seeds, one a child, all different; empty: 1, 2, ... n", low=0)
    average_noise: int = option(1000, "noise seed of the average's further training", low=0)
    statistics_noise: int = option(
        1000, "noise seed of the images that batch-norm statistics are recomputed on", low=0
    )


@dataclass(frozen=True)
class EngineConfig:
    """How steps are computed; results agree to float tolerance whatever is chosen here."""

    name: str = option(
        "auto",
        "engine that trains the members: one after the other, as branches of one captured step, as one batched "
        "network, or as that with CUDA C++ kernels for 3 x 3 convolutions in bf16; auto: the fastest that "
        "python -m fastwi.tune measured here; where it has not, on a GPU graph or, for several networks, stacked, "
        "if they can train the network, and loop otherwise",
        choices=("auto", "loop", "graph", "stacked", "halo"),
    )
    device: str = option(
        "auto",
        "auto, cpu, cuda or cuda:N; auto: cuda where there is one",
        pattern=_DEVICE,
        form="auto, cpu, cuda or cuda:N, N from 0 to 999",
    )
    precision: str = option(
        "auto",
        "activations and convolutions; auto: what was measured faster on such a processor; a run or store goes on "
        "in what it was begun in",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    deterministic: bool = option(False, "kernels that give the same bits every time, on a GPU too, where slower")
    backend: str = option(
        "auto",
        "fused: this project's CPU kernels; compile: torch.compile; eager; auto: the fastest available",
        choices=("auto", "fused", "compile", "eager"),
    )
    threads: int = option(0, "CPU threads; 0: all cores that this process may use", low=0, high=4096)
    evaluation_batch: int = option(
        0,
        "images of an evaluation step; 0: 500; on a GPU 2500 for up to 4 networks at once on images of at most "
        "64 x 64 pixels, without engine.deterministic",
        unit="images",
        low=0,
    )


@dataclass(frozen=True)
class Config:
    """A run's whole configuration."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    experiment: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)
    trajectory: TrajectoryConfig = dataclasses.field(default_factory=TrajectoryConfig)
    seeds: SeedConfig = dataclasses.field(default_factory=SeedConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)


SECTIONS: dict[str, type] = typing.get_type_hints(Config)
"""The dataclass of each section, in the order of `Config`."""

KEYS: dict[str, Key] = {path: key for each in SECTIONS.items() for path, key in keys_of(*each).items()}
"""Every key by its dotted name, in the same order."""


def section_keys(section: str, keys: Iterable[Key] = KEYS.values()) -> list[Key]:
    """The keys of one section, in their order."""
    return [key for key in keys if key.section == section]


def times_alone(experiment: ExperimentConfig) -> int:
    """Times s that the parent trains on alone for each round (`continue_parent`)."""
    return {"none": 0, "each": 1, "total": experiment.children}[experiment.continue_parent]


def config_problems(config: Config) -> Iterator[str]:
    """What is wrong between the values of a run; each by itself is taken as right."""
    experiment, most_images = config.experiment, config.data.train_images or math.inf
    model = config.model
    if problem := model_problem(model.name, model.width, model.initialisation):
        yield problem
    if model.weights and model.initialisation != "default":
        yield f"model.initialisation: {model.initialisation}, but model.weights gives the weights; leave one out"
    if not (experiment.k or experiment.s or experiment.after):
        yield "experiment.k: k, s and after are all 0, so nothing is trained; make one at least 1"
    children = experiment.children
    trained_on = 1 + children * experiment.continue_children
    alone = times_alone(experiment)
    trained_on += alone > 0
    networks = {"k": 1, "s": experiment.rounds * (children + alone), "after": trained_on}
    epochs = {name: number * _least_epochs(getattr(experiment, name)) for name, number in networks.items()}
    count = sum(epochs.values())
    if count > MOST_EPOCHS:
        most = max(epochs, key=lambda name: epochs[name])
        yield (
            f"experiment.{most}: {_least_epochs(getattr(experiment, most)):,} makes {count:,} epochs of all networks "
            f"together; make these at most {MOST_EPOCHS:,}"
        )
    if experiment.rounds > 1 and isinstance(experiment.s, Time) and experiment.s.less_k:
        yield f"experiment.s: {experiment.s} has no rounds; give the length of one, or experiment.rounds: 1"
    if experiment.rounds > 1 and not experiment.s:
        yield f"experiment.rounds: {experiment.rounds}, but experiment.s is 0, so children train nothing; give s"
    for name, given in (("experiment.weights", experiment.weights), ("seeds.child_noise", config.seeds.child_noise)):
        if given and len(given) != children:
            yield f"{name}: has {len(given)} values for {children} children; give {children}, or none"
    if experiment.weights and abs(math.fsum(experiment.weights) - 1) > 1e-6:
        yield f"experiment.weights: sum to {math.fsum(experiment.weights):.9g}; make them sum to 1"
    if "own" not in experiment.measure:
        yield "experiment.measure: lacks own; give [own], or [own, recomputed]"
    if experiment.children_rate_factor != 1 and not experiment.continue_children:
        yield "experiment.children_rate_factor: the children are not trained on; set continue_children: true"
    for earlier, later in itertools.pairwise(config.schedule.drop_epochs):
        if not _may_follow(later, earlier):
            yield f"schedule.drop_epochs: {later} follows {earlier}; give them strictly increasing"
    batch, recompute = config.optimizer.batch_size, experiment.recompute_images
    for name, images in (("optimizer.batch_size", batch), ("experiment.recompute_images", recompute)):
        if images > most_images:
            yield f"{name}: {images} is more than data.train_images, {most_images}; lower it"


def _least_epochs(time: AnyTime) -> int:
    """A lower bound of a time in epochs. The planner sees what it is."""
    return time.epochs * (not time.less_k) if isinstance(time, Time) else time


def _may_follow(later: AnyTime, earlier: AnyTime) -> bool:
    """Whether a time is the later one for some length of an epoch. Others are found once the dataset is known."""
    return any(after > before for after, before in zip(parts_of(later), parts_of(earlier), strict=True))
