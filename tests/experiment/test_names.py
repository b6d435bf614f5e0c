"""The promise of names, key by key: another number has another name, and the same numbers keep theirs.

For every key of the schema two tiny runs that differ in it alone. What each name stands for is compared to the bit: a
state with its momentum and statistics, and every measurement. A key that is added to the schema has to be put into
`CASES`, or the first test fails.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import trained
from tiny_runs import (
    NETWORK,
    TEST_IMAGES,
    TRAIN_IMAGES,
    Place,
    Settings,
    TinyRun,
    config_of,
    names_in,
    run_point,
    tiny_network,
    tiny_run,
    write_digits,
)

import fastwi
from fastwi.config.schema import KEYS
from fastwi.config.sweep import SweepSpec
from fastwi.engine.schedule import CURVES
from fastwi.experiment.planner import plan_sweep
from fastwi.kernels.cpu import library
from fastwi.models.registry import _BUILDERS, build_model
from fastwi.population import Population

OTHER, NONE, ROUNDING = "another number", "no number", "rounding alone"


@dataclasses.dataclass(frozen=True)
class Case:
    """A key's other value, and what it must do to numbers and names, where the settings `given` hold.

    `effect`: OTHER where some number of some row changes, NONE where none does, ROUNDING where they agree to float
    tolerance, which is the same result. `renamed`: a run whose numbers stay has another identity nevertheless, as
    that is of the settings as written. `whole`: what changed is named as a whole, so that a network before its first
    epoch is renamed too.
    """

    value: Any
    effect: str = OTHER
    given: Settings = dataclasses.field(default_factory=dict)
    renamed: bool = False
    whole: bool = False


RECOMPUTE = {"experiment.batch_norm": "recompute", "experiment.recompute_images": 10}
FROM_THE_START = {"experiment.k": 0, "experiment.s": 0}
RECOMPUTED_THERE = {**RECOMPUTE, **FROM_THE_START}
UNEVEN = {"optimizer.batch_size": 7}  # three images are left
OWN_NETWORK = {"model.name": "TINY", "model.width": 1.0}
GO_ON = {"experiment.continue_children": True}
UNEQUAL = {"experiment.weights": (0.25, 0.75)}
KEEP = {"experiment.momentum": "keep"}
SHORT = {"schedule.end": 3}
FEW = {"experiment.recompute_images": 12}
AT_AVERAGE = ("restart", "anneal")
ANNEAL = {"schedule.at_average": "anneal"}
OVER_TIME = {"trajectory.averages": ("lawa", "swa", "ema"), "trajectory.window": 2, "experiment.after": 3}
ROUNDS = {"experiment.rounds": 2, "experiment.after": 0}

CASES: dict[str, list[Case]] = {
    "run.name": [Case("other", NONE)],
    "run.directory": [Case("other", NONE)],
    "run.tensorboard": [Case(True, NONE)],
    "data.path": [
        Case("COPY", NONE),
        Case("TRAIN PIXELS", whole=True), Case("TRAIN PIXELS", given=RECOMPUTE, whole=True),
        *(Case(change) for change in ("TEST PIXELS", "LABELS", "CLASSES", "MEAN", "STD")),
        *(Case(change, given=FROM_THE_START) for change in ("TEST PIXELS", "LABELS", "CLASSES", "MEAN", "STD")),
    ],
    "data.train_images": [Case(18), Case(TRAIN_IMAGES, NONE, renamed=True)],
    "data.test_images": [Case(15), Case(15, given=FROM_THE_START), Case(TEST_IMAGES, NONE, renamed=True)],
    "data.streaming": [
        Case("resident", NONE), Case("streamed", NONE), Case("streamed", NONE, {**UNEVEN, "data.last_batch": "keep"}),
    ],
    "data.decoder": [Case("reference", NONE)],  # JPEGs have a test of their own
    "data.image_size": [
        Case(8), Case(8, given=FROM_THE_START), Case(16, NONE, renamed=True), Case(12, given={"data.image_size": 8}),
    ],
    "data.last_batch": [
        Case("keep", NONE, renamed=True), Case("keep", given=UNEVEN),
        Case("keep", given={**UNEVEN, **FROM_THE_START}), Case("keep", given={**UNEVEN, **RECOMPUTED_THERE}),
        Case("keep", given={"experiment.recompute_images": 17}),
        Case("keep", given={**RECOMPUTED_THERE, "experiment.recompute_images": 17}),
    ],
    "augment.padding": [Case(2), Case(2, given=FROM_THE_START), Case(2, given=RECOMPUTED_THERE)],
    "augment.flip": [Case(0.0), Case(0.0, given=FROM_THE_START), Case(0.0, given=RECOMPUTED_THERE)],
    "model.name": [
        Case("TINY", given={"model.width": 1.0}), Case("OTHER", given={**OWN_NETWORK, **FROM_THE_START}),
        Case("ELSEWHERE", NONE, OWN_NETWORK),
    ],
    "model.width": [Case(0.125), Case(0.125, given=FROM_THE_START)],
    "model.weights": [
        Case("WEIGHTS"), Case("WEIGHTS", given=FROM_THE_START), Case("OTHERS", given={"model.weights": "WEIGHTS"}),
        *(Case(same, NONE, {"model.weights": "WEIGHTS"}) for same in ("SAME", "POPULATION")),
    ],
    "model.initialisation": [
        Case("kaiming_normal"), Case("open_lth"), Case("open_lth", given={"model.initialisation": "kaiming_normal"}),
        Case("open_lth", given=FROM_THE_START),
    ],
    "optimizer.batch_size": [Case(8), Case(8, given=FROM_THE_START), Case(8, given=RECOMPUTED_THERE)],
    "optimizer.learning_rate": [Case(0.07), Case(0.07, given={"schedule.warmup_iterations": 2})],
    "optimizer.momentum": [Case(0.8)],
    "optimizer.weight_decay": [Case(0.01)],
    "optimizer.nesterov": [Case(True)],
    "optimizer.ema_decay": [Case(0.5), Case(0.5, given={"optimizer.ema_decay": 0.9})],
    "schedule.name": [
        Case("cosine", given=SHORT), Case("linear", given=SHORT), Case("one_cycle", given=SHORT),
        Case("linear", given={**SHORT, "schedule.name": "cosine"}), Case("constant"),
        Case("constant", NONE, {"schedule.drop_epochs": ()}, renamed=True),
        Case("cosine", given={**SHORT, "schedule.warmup_iterations": 4}),
        Case("one_cycle", given={**SHORT, "schedule.warmup_iterations": 4}),
    ],
    "schedule.drop_epochs": [
        Case((1,)), Case((1, 2)), Case((2, 50), NONE, renamed=True), Case(("2ep",), NONE), Case(("9it",)),
        Case(("5it",), given={"schedule.drop_epochs": ("6it",)}), Case(("8it",), NONE, renamed=True),
        Case(("5it", "7it"), given={"schedule.drop_epochs": ("5it", "6it")}),
    ],
    "schedule.drop_factor": [Case(0.25), Case(0.25, NONE, {"schedule.drop_epochs": ()}, renamed=True)],
    "schedule.warmup_iterations": [
        Case(3), Case(9), Case(4, given={"schedule.warmup_iterations": 3}),
        Case(20, given={"schedule.warmup_iterations": 10}), Case("1ep"), Case("0ep", NONE),
        Case("2ep", NONE, {"schedule.warmup_iterations": 8}, renamed=True),
        Case(3, given={**SHORT, "schedule.name": "one_cycle", "schedule.warmup_iterations": 2}),
        Case(3, given={**SHORT, "schedule.name": "linear", "schedule.warmup_iterations": 2}),
    ],
    "schedule.end": [
        Case(4, NONE, renamed=True), Case("11it", given={**SHORT, "schedule.name": "linear"}),
        Case("12it", NONE, {**SHORT, "schedule.name": "linear"}, renamed=True),
        *(Case(4, given={**SHORT, "schedule.name": name}) for name in CURVES),
    ],
    "schedule.final_factor": [
        Case(0.5, NONE, SHORT, renamed=True),
        *(Case(0.5, given={**SHORT, "schedule.name": name}) for name in CURVES),
        Case(0.5, given=ANNEAL), Case(1.0, given=ANNEAL),
    ],
    "schedule.at_average": [
        Case("restart"), Case("anneal"), Case("anneal", given=GO_ON), Case("restart", given=GO_ON),
        Case("restart", NONE, {"schedule.drop_epochs": ()}, renamed=True),
        Case("restart", given={"schedule.drop_epochs": (), "schedule.warmup_iterations": 2}),
        Case("restart", given={**SHORT, "schedule.name": "cosine"}),
        *(Case(at, given={**SHORT, "schedule.name": "linear", "experiment.s": "5it"}) for at in AT_AVERAGE),
        Case("anneal", NONE, {"experiment.after": 0}, renamed=True),
        Case("anneal", NONE, {"schedule.final_factor": 1.0, "schedule.drop_epochs": ()}, renamed=True),
    ],
    "experiment.k": [
        Case(2), Case(0), Case(0, given={"experiment.s": 0}), Case("3it"), Case("6it", given={"experiment.k": "5it"}),
        Case("4it", NONE, renamed=True), Case("1ep", NONE),
    ],
    "experiment.s": [
        Case(2), Case(0), Case("3it"), Case("6it", given={"experiment.s": "5it"} | GO_ON),
        Case("2ep-k", NONE, renamed=True), Case("9it-k", given={"experiment.s": "10it-k"}),
    ],
    "experiment.after": [Case(2), Case(0), Case("3it"), Case("4it", NONE, renamed=True)],
    "experiment.children": [Case(3), Case(3, given={"experiment.k": 0})],
    "experiment.weights": [
        Case((0.25, 0.75)), Case((0.75, 0.25), given=UNEQUAL), Case((0.5, 0.5), NONE, renamed=True),
        Case((1.0, 0.0)), Case((-0.5, 1.5)), Case((0.75, 0.25), given={**UNEQUAL, "experiment.outer_step": 0.0}),
    ],
    "experiment.batch_norm": [Case("recompute"), Case("recompute", given=FROM_THE_START)],
    "experiment.momentum": [
        Case("average"), Case("keep"), Case("keep", given={"experiment.momentum": "average"}),
        Case("keep", given=RECOMPUTE), Case("average", given={"experiment.s": 0}),
    ],
    "experiment.child_momentum": [
        Case("reset"), Case("reset", given={**GO_ON, "experiment.s": 0}),
        Case("reset", NONE, {"experiment.s": 0}, renamed=True),
        Case("reset", NONE, {"experiment.k": 0}, renamed=True),
        Case("reset", NONE, {"optimizer.momentum": 0.0}, renamed=True), Case("reset", given=ROUNDS),
    ],
    "experiment.rounds": [
        Case(2), Case(2, given=RECOMPUTE), Case(3, given=ROUNDS), Case(3, given={**ROUNDS, "experiment.pull": 0.5}),
        Case(2, given={"experiment.outer_nesterov": True, "experiment.outer_momentum": 0.9}),
    ],
    "experiment.outer_step": [Case(0.5), Case(1.5, given=ROUNDS), Case(0.5, given={**ROUNDS, **RECOMPUTE})],
    "experiment.outer_momentum": [
        Case(0.5, given=ROUNDS), Case(0.5, given={**ROUNDS, "experiment.outer_step": 0.5}),
        Case(0.5, NONE, renamed=True), Case(0.5, given={"experiment.outer_nesterov": True}),
    ],
    "experiment.outer_nesterov": [
        Case(True, given={**ROUNDS, "experiment.outer_momentum": 0.5}), Case(True, NONE, ROUNDS, renamed=True),
        Case(True, given={"experiment.outer_momentum": 0.5}),
    ],
    "experiment.pull": [
        Case(0.5, given=ROUNDS), Case(0.0, given={**ROUNDS, "experiment.round_momentum": "own"}),
        Case(0.5, given={**ROUNDS, **RECOMPUTE}), Case(0.5, NONE, renamed=True),
    ],
    "experiment.round_momentum": [
        Case("own", given=ROUNDS), Case("own", given={**ROUNDS, "experiment.momentum": "average"}),
        Case("own", given={**ROUNDS, "experiment.pull": 0.5}), Case("own", NONE, renamed=True),
    ],
    "experiment.continue_parent": [Case("each"), Case("total"), Case("total", given=ROUNDS)],
    "experiment.continue_children": [Case(True), Case(True, given={"experiment.rounds": 2})],
    "experiment.children_rate_factor": [Case(0.1, given=GO_ON), Case(0.0, given=GO_ON)],
    "experiment.recompute_images": [
        Case(6), Case(12, given=RECOMPUTE), Case(12, given=RECOMPUTED_THERE),
        Case(12, given={"experiment.after": 0}), Case(TRAIN_IMAGES, NONE, renamed=True),
        Case(17, NONE, {"experiment.recompute_images": 12}, renamed=True),
        Case(17, given={"experiment.recompute_images": 16, "data.last_batch": "keep"}),
        Case(17, NONE, {**RECOMPUTE, "experiment.recompute_images": 12}, renamed=True),
        Case(6, NONE, {"experiment.recompute_images": 4}, renamed=True),  # a batch at least
    ],
    "experiment.measure": [
        *(Case(("own", "recomputed"), given=given) for given in ({}, {"experiment.k": "3it"}, {**GO_ON, **FEW})),
        Case(("own", "recomputed"), given={**ROUNDS, "experiment.s": 2, "experiment.continue_parent": "total"}),
    ],
    "trajectory.averages": [Case(("lawa", "swa", "ema")), Case(("ema",), given=OVER_TIME)],
    "trajectory.networks": [Case(("parent",), given=OVER_TIME)],
    "trajectory.window": [Case(3, given=OVER_TIME), Case(3, NONE, renamed=True)],
    "trajectory.begin": [Case(1, given=OVER_TIME)],
    "trajectory.decay": [Case(0.5, given=OVER_TIME)],
    "seeds.init": [Case(5), Case(5, given=FROM_THE_START)],
    "seeds.parent_noise": [Case(5)],
    "seeds.child_noise": [
        Case((1, 3)), Case((3, 2)), Case((1, 2), NONE), Case((2, 1), given=UNEQUAL), Case((2, 1), given=KEEP),
    ],
    "seeds.average_noise": [Case(5)],
    "seeds.statistics_noise": [
        Case(5), Case(5, given=RECOMPUTE), Case(5, given=RECOMPUTED_THERE),
        Case(5, given={**RECOMPUTE, "experiment.momentum": "average"}),
    ],
    "engine.name": [Case("stacked", ROUNDING)],
    "engine.device": [Case("auto", ROUNDING)],
    "engine.precision": [Case("bf16"), Case("bf16", given=FROM_THE_START), Case("fp16")],
    "engine.deterministic": [Case(True, ROUNDING)],
    "engine.backend": [Case("fused", ROUNDING)],
    "engine.threads": [Case(2, ROUNDING)],
    "engine.evaluation_batch": [Case(7, ROUNDING)],
}  # fmt: skip


class Runs:
    """The runs of this module, each done once, and what every name has stood for so far."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._known: dict[tuple[str, ...], tuple[object, ...]] = {}
        self._done: dict[str, TinyRun] = {}
        copied = write_digits(place / "digits"), write_digits(place / "moved" / "copy")
        self._files: dict[str, Path | str] = {"COPY": copied[1]}
        for change in ("train pixels", "test pixels", "labels", "classes", "mean", "std"):
            self._files[change.upper()] = write_digits(place / change, change)
        other = NETWORK.replace(".relu()", ".tanh()")
        for name, text in (("tiny.py", NETWORK), ("other.py", other), ("moved/tiny.py", NETWORK)):
            (place / name).write_text(text)
        for name, file in (("TINY", "tiny.py"), ("OTHER", "other.py"), ("ELSEWHERE", "moved/tiny.py")):
            self._files[name] = f"{place / file}:Tiny"
        self.base: dict[str, Any] = {
            "data.path": copied[0], "model.name": "convnet", "model.width": 0.0625, "augment.padding": 1,
            "optimizer.batch_size": 6, "schedule.drop_epochs": (2,), "schedule.drop_factor": 0.5,
            "experiment.k": 1, "experiment.s": 1, "experiment.after": 1, "engine.device": "cpu",
            "engine.precision": "fp32", "engine.backend": "eager", "engine.threads": 1,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            network = build_model(self.base["model.name"], 10, self.base["model.width"])
        for name, seed, file in (("WEIGHTS", 1, "a.pt"), ("SAME", 1, "b.safetensors"), ("OTHERS", 2, "c.pt")):
            self._files[name] = place / file
            fastwi.save_state_dict(trained(network, seed).state_dict(), place / file)
        self._files["POPULATION"] = place / "d.safetensors"
        Population.from_modules([trained(network, 1)]).save(place / "d.safetensors")

    def settings(self, given: Settings) -> dict[str, Any]:
        """Those of the base and those `given`."""
        settings = {**self.base, **given}
        for path, value in settings.items():
            value = self._files.get(value, value) if isinstance(value, str) else value
            settings[path] = str(value) if isinstance(value, Path) else value
        return settings

    def run(self, given: Settings, exact: bool = True) -> TinyRun:
        """The run of the base with the settings `given`.

        Where it is `exact`, no name in it may have stood for another number in any run before it.
        """
        settings = self.settings(given)
        text = json.dumps(settings)
        if text not in self._done:
            self._done[text] = tiny_run(settings)
        run = self._done[text]
        if exact:
            self.check(run)
        return run

    def check(self, run: TinyRun) -> None:
        for place, named in run.found.items():
            known = self._known.setdefault(named.name, named.numbers)
            assert known == named.numbers, f"{place}: one name for two results: {known} and {named.numbers}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_BUILDERS, "convnet", tiny_network)  # those of the registry take longer to build than to train
        yield Runs(tmp_path_factory.mktemp("names"))


def changed_places(one: TinyRun, other: TinyRun, of: Callable[[TinyRun], dict[Place, Any]]) -> set[Place]:
    """Where two runs differ; not where only one of them has a network."""
    first, second = of(one), of(other)
    return {place for place in first.keys() & second.keys() if first[place] != second[place]}


def check_pair(one: TinyRun, other: TinyRun, whole: bool = False) -> None:
    """Wherever a number differs the name differs, and nowhere else; and so with the runs' own names."""
    renamed, altered = (changed_places(one, other, of) for of in (lambda r: r.names, lambda r: r.numbers))
    assert altered <= renamed, f"other numbers under the same name: {sorted(map(str, altered - renamed))}"
    renamed -= {("initial",)} if whole else set()
    assert renamed <= altered, f"other names of the same numbers: {sorted(map(str, renamed - altered))}"
    if one.numbers != other.numbers:
        assert one.identity != other.identity


def test_every_key_of_the_schema_is_here() -> None:
    assert list(CASES) == list(KEYS)
    assert all(CASES.values())


@pytest.mark.parametrize(
    ("path", "case"),
    [pytest.param(path, case, id=f"{path}-{i}") for path, cases in CASES.items() for i, case in enumerate(cases)],
)
def test_another_number_has_another_name_and_the_same_keeps_its(path: str, case: Case, runs: Runs) -> None:
    if case.value == "fused" and library() is None:
        pytest.skip("this machine has no compiler for the fused kernels")
    one = runs.run(case.given)
    other = runs.run({**case.given, path: case.value}, exact=case.effect != ROUNDING)
    if case.effect == ROUNDING:
        for place, numbers in one.numbers.items():
            _, *losses, accuracy = numbers
            assert other.numbers[place][1:-1] == pytest.approx(tuple(losses), rel=1e-3, abs=1e-3)
            assert other.numbers[place][-1] == pytest.approx(accuracy, abs=100 / TEST_IMAGES)  # one image
        assert one.names == other.names
        assert one.identity == other.identity
        return
    check_pair(one, other, case.whole)
    assert (one.numbers != other.numbers) == (case.effect == OTHER)
    if case.effect == NONE:
        assert (one.identity != other.identity) == case.renamed


def test_names_are_the_same_alone_and_among_others(runs: Runs) -> None:
    """All points of this module in one tree: what is looked up for one must not be another's."""
    cases = [(path, case) for path, cases in CASES.items() for case in cases]
    configs = [config_of(runs.settings({**case.given, path: case.value})) for path, case in cases]
    together = plan_sweep(SweepSpec(configs[0]), [run_point(config) for config in configs])
    for config, place in zip(configs, together.places, strict=True):
        alone = plan_sweep(SweepSpec(config), [run_point(config)])
        assert names_in(together.tree, place) == names_in(alone.tree, alone.places[0])
    alike: dict[int, set[object]] = {}
    tree = together.tree
    for node in tree.epoch_nodes():
        config = tree.configs[node]
        inputs = together.inputs_of(config)
        images = [inputs.images(split, config.data) for split in ("train", "test")]
        network = config.model.width, config.engine.precision, inputs.digest, *images
        trained = tree.iterations[tree.before[node]], tree.iterations[node]
        alike.setdefault(tree.alike[node], set()).add((*network, *trained))
    assert {len(networks) for networks in alike.values()} == {1}, "one population of networks that are not alike"


@pytest.mark.parametrize("file", ["edited.py", "helper.py"])
def test_an_edited_network_has_other_names(file: str, runs: Runs, tmp_path: Path) -> None:
    """Edited itself, or what it imports."""
    texts = {
        "edited.py": "from helper import between\n" + NETWORK.replace("self.norm(", "between(self.norm, "),
        "helper.py": "def between(norm, x):\n    return norm(x.relu())\n",
    }

    def run_of() -> TinyRun:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        model = f"{tmp_path / 'edited.py'}:Tiny"
        run = tiny_run(runs.settings({"model.name": model, "model.width": 1.0}))
        runs.check(run)
        return run

    one = run_of()
    texts[file] = texts[file].replace("relu()", "sigmoid()")
    other = run_of()
    check_pair(one, other)
    assert one.numbers != other.numbers
