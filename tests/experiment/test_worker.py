"""A worker trains what was planned or nothing: what is replaced after the plan is refused when it is read."""

import dataclasses
import itertools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from listeners import Silent
from mappings import config_from_mapping
from tiny_runs import few_digits

import fastwi
import fastwi.experiment.resources as of_jobs
from data_prep.progress import silent
from data_prep.write import write_dataset
from fastwi.analysis.opened import OpenedSweep
from fastwi.beton import StoredBeton
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepOptions, SweepSpec
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_engine, build_network
from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.distributed import _Actor
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.scheduler import Executor, Limits, carry_out
from fastwi.experiment.store import DamagedState, Measurement, Store
from fastwi.experiment.tree import MeasurementKey, Tree
from fastwi.experiment.worker import Job, Outcome, Report, Worker
from fastwi.models.registry import build_model

NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 10))
"""
Place = tuple[Path, Config]
Do = Callable[[Job, Report], Outcome]


def write_digits(directory: Path, pixel: int = 0, label: int = 0) -> None:
    """Digits as a dataset; of both splits one bit of a pixel, or a label, is another one if given."""
    digits = few_digits(60, 20)
    for split in (digits.train, digits.test):
        split.images_NHWC[7, 3, 3, 1] ^= pixel
        split.labels_N[-1] = (split.labels_N[-1] + label) % 10
    write_dataset(digits, directory, "raw", silent)


def write_network(directory: Path, source: str = NETWORK) -> None:
    (directory / "net.py").write_text(source)


def write_weights(directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    name = f"{directory / 'net.py'}:Net"
    fastwi.save_state_dict(build_model(name, 10, 1.0, (16, 16)).state_dict(), directory / "parent.pt")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory with a dataset, a network's source and weights, and a configuration of all three."""
    write_digits(tmp_path / "data")
    write_network(tmp_path)
    write_weights(tmp_path, seed=0)
    config = config_from_mapping({
        "data": {"path": str(tmp_path / "data")},
        "model": {"name": f"{tmp_path / 'net.py'}:Net", "weights": str(tmp_path / "parent.pt")},
        "optimizer": {"batch_size": 20}, "augment": {"padding": 1}, "schedule": {"drop_epochs": []},
        "experiment": {"k": 1, "s": 1, "after": 0, "recompute_images": 20},
        "engine": {"device": "cpu", "precision": "fp32", "backend": "eager", "threads": 1},
    })  # fmt: skip
    return tmp_path, config


def planned(place: Place) -> PlannedSweep:
    directory, config = place
    return plan_sweep(SweepSpec(config, {}, SweepOptions(store=str(directory / "store"), parents=(0, 1))))


def carried_out(
    place: Place, sweep: PlannedSweep, do: Callable[[Worker], Do] | None = None
) -> dict[MeasurementKey, Measurement]:
    """All that is measured once the sweep is carried out, one network at a time, each job by what `do` makes."""
    with Store.open(place[0] / "store") as store:
        worker = Worker(sweep.tree, sweep.spec.options)
        if do is not None:
            worker.run = do(worker)
        carry_out(store, Executor(worker), Silent(), Limits(1, 1, 30.0))
        return store.measurements()


def by_actor(worker: Worker) -> Do:
    """As Ray has a job done: the job and its answer are pickled on their way."""
    tree = pickle.loads(pickle.dumps(worker.tree))
    actor = _Actor(tree, SweepOptions(store=str(worker.resident._store)), Path.cwd())

    def run(job: Job, report: Report) -> Outcome:
        answer = pickle.loads(pickle.dumps(actor.run(pickle.loads(pickle.dumps(job)))))
        if isinstance(answer, Exception):
            raise answer
        report.measured(answer.tasks, answer.measurements)
        return answer

    return run


def stored(place: Place) -> int:
    with Store.open(place[0] / "store") as store:
        return len(store.measurements()) + len(list((place[0] / "store").rglob("*.safetensors")))


REPLACED: dict[str, tuple[Callable[[Path], None], str]] = {
    "pixel": (lambda there: write_digits(there / "data", pixel=1), "data: changed.*train images"),
    "label": (lambda there: write_digits(there / "data", label=1), "data: changed.*train images"),
    "network": (lambda there: write_network(there, NETWORK.replace("ReLU", "GELU")), "net.py:Net: changed.*network"),
    "weights": (lambda there: write_weights(there, seed=1), "parent.pt: changed.*weights"),
}


@pytest.mark.parametrize("where", ["local", "actor"])
@pytest.mark.parametrize("what", REPLACED)
def test_what_is_replaced_after_the_plan_is_refused(place: Place, what: str, where: str) -> None:
    sweep = planned(place)
    replace, said = REPLACED[what]
    replace(place[0])
    with pytest.raises(UserError, match=said):
        carried_out(place, sweep, by_actor if where == "actor" else None)
    assert stored(place) == 0


@pytest.mark.parametrize("place_in_file", ["image", "card"])
def test_a_flipped_bit_of_a_streamed_set_is_refused(place: Place, place_in_file: str) -> None:
    directory, config = place
    place = directory, dataclasses.replace(config, data=dataclasses.replace(config.data, streaming="streamed"))
    sweep = planned(place)
    path = directory / "data" / ("train.beton" if place_in_file == "image" else "card.json")
    content = bytearray(path.read_bytes())
    if place_in_file == "image":
        at, said = content.index(StoredBeton(path).read(17)) + 100, r"train\.beton: image 17 is not the one"
    else:
        at, said = content.index(b"std") + 12, r"card\.json: "
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        carried_out(place, sweep)
    assert stored(place) == 0


@pytest.mark.parametrize("what", ["pixel", "network", "weights"])
def test_what_is_read_again_is_checked_again(place: Place, what: str) -> None:
    """The second parent is built of the files as they are then. A dataset that is in memory may be replaced."""
    sweep, jobs = planned(place), list[Job]()

    def replacing(worker: Worker) -> Do:
        run = worker.run

        def do(job: Job, report: Report) -> Outcome:
            jobs.append(job)
            if len(jobs) == 2:
                REPLACED[what][0](place[0])
            return run(job, report)

        return do

    if what == "pixel":
        expected = carried_out(place, sweep, by_actor)
        shutil.rmtree(place[0] / "store")
        found = carried_out(place, sweep, replacing)
        assert {key: m.result() for key, m in found.items()} == {key: m.result() for key, m in expected.items()} != {}
        return
    with pytest.raises(UserError, match=rf"changed.*{what}"):
        carried_out(place, sweep, replacing)
    with Store.open(place[0] / "store") as store:
        states = {state for state, _ in store.measurements()}
    first, second = sweep.places
    assert set(first.parent) <= states
    assert states.isdisjoint((*second.parent, *second.ends))


def test_analyses_are_held_to_what_was_planned(place: Place) -> None:
    carried_out(place, planned(place))
    spec = planned(place).spec
    with OpenedSweep(spec) as opened:
        write_digits(place[0] / "data", pixel=1)
        with pytest.raises(UserError, match=r"data: changed.*train images"):
            opened.resources.splits(place[1])
    write_digits(place[0] / "data")
    with OpenedSweep(spec) as opened:
        write_weights(place[0], seed=1)
        with pytest.raises(UserError, match=r"parent\.pt: changed.*weights"):
            opened.resources.network(place[1])


def test_what_jobs_need_is_loaded_and_built_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images for all precisions; a network for an engine of each, and none for the layout then."""
    built = []
    monkeypatch.setattr(of_jobs, "build_network", lambda *given: built.append(given) or build_network(*given))
    resources, config = Resources(planned(place).tree), place[1]
    other = dataclasses.replace(config, engine=dataclasses.replace(config.engine, precision="bf16"))
    slower = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.01))
    assert [resources.engine(each).dtype for each in (config, other)] == [torch.float32, torch.bfloat16]
    assert resources.engine(slower).resolved is resources.engine(config).resolved
    assert resources.splits(config) == resources.splits(other)
    assert resources.layout(config).row_bytes == 8 * (768 * 8 + 8 + 8 * 10 + 12)  # no statistics, rows of 16 bytes
    assert len(built) == 2


def test_own_networks_are_tried_at_each_batch_size_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several networks."""
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(
        of_jobs,
        "try_training",
        lambda _, config, *__: tried.append((config.model.name, config.optimizer.batch_size)),
    )
    directory, config = place
    (directory / "other.py").write_text(NETWORK)
    names = config.model.name, f"{directory / 'other.py'}:Net"
    resources = Resources(plan_sweep(SweepSpec(config, {"model.name": names}, SweepOptions(store="none"))).tree)
    for name, batch in ((names[0], 20), (names[0], 10), (names[1], 20), (names[0], 20)):
        optimizer = dataclasses.replace(config.optimizer, batch_size=batch)
        model = dataclasses.replace(config.model, name=name)
        resources.tried_engine(dataclasses.replace(config, model=model, optimizer=optimizer))
    assert tried == [(names[0], 20), (names[0], 10), (names[1], 20)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What each engine is built of."""
    calls: list[tuple] = []
    monkeypatch.setattr(of_jobs, "build_engine", lambda *given: calls.append(given) or build_engine(*given))
    return calls


def test_an_engine_is_chosen_for_the_networks_that_a_sweep_trains_together(place: Place, monkeypatch, built) -> None:
    """And for streamed images, once they are known to be."""
    config, tree = place[1], planned(place).tree
    children = [node for node in tree.epoch_nodes() if tree.epochs[node] == 2]
    assert tree.widest() == len(children) == 4  # of two parents
    alphas = SweepOptions(store="none", alphas=(0.0, 0.25, 0.5))
    assert plan_sweep(SweepSpec(config, {}, alphas)).tree.widest() == 2  # averages are not trained together
    for resources in (Resources(tree), Resources(tree, 1), Resources(Tree())):
        resources._inputs = tree.inputs
        resources.engine(config)
    assert [given[2:] for given in built] == [(4, True), (1, True), (1, True)]  # members, resident
    streamed, auto = (
        dataclasses.replace(config, data=dataclasses.replace(config.data, streaming=streaming))
        for streaming in ("streamed", "auto")
    )
    assert resources.engine(auto).resolved is not resources.engine(streamed).resolved
    assert [given[2:] for given in built[3:]] == [(1, False)]
    monkeypatch.setattr("fastwi.data.split.fits_memory", lambda *_: False)
    resources.splits(auto)
    assert resources.engine(auto).resolved is resources.engine(streamed).resolved


@pytest.mark.parametrize(("name", "expected"), [("auto", [20, 10]), ("loop", [20])])
def test_auto_chooses_an_engine_for_each_batch_size(
    place: Place, built: list[tuple], name: str, expected: list[int]
) -> None:
    """What was measured depends on it."""
    resources, config = Resources(planned(place).tree), place[1]
    for batch in (20, 10, 20):
        optimizer = dataclasses.replace(config.optimizer, batch_size=batch)
        engine = dataclasses.replace(config.engine, name=name)
        resources.engine(dataclasses.replace(config, optimizer=optimizer, engine=engine))
    assert [config.optimizer.batch_size for config, *_ in built] == expected


def test_both_splits_are_of_one_card(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that is replaced between its splits is refused, though each goes with the card of its moment."""
    import fastwi.data.split as module

    opened = module.open_split

    def replaced_after(*arguments: object) -> object:
        found = opened(*arguments)
        write_digits(place[0] / "data", pixel=1)
        return found

    monkeypatch.setattr(module, "open_split", replaced_after)
    with pytest.raises(UserError, match=r"test\.beton: not the images and labels"):
        module.open_splits(place[1].data, torch.device("cpu"))


class Unpicklable(Exception):
    """As those of torch.compile, which hold a frame."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.held = lambda: None


@pytest.mark.parametrize(
    ("met", "words"),
    [
        (Unpicklable("of no", "use"), "RuntimeError: Unpicklable: of no use"),
        (CheckpointError("a: foreign"), "CheckpointError: a: foreign"),
        (DamagedState("a: damaged", "key"), "DamagedState: a: damaged"),
    ],
)
def test_answers_survive_the_way(tmp_path, monkeypatch, met, words):
    monkeypatch.chdir(tmp_path)  # where the actor goes

    def run(_job, _report):
        raise met

    actor = _Actor(Tree(), SweepOptions(store=str(tmp_path)), tmp_path)
    monkeypatch.setattr(actor._worker, "run", run)
    answer = pickle.loads(pickle.dumps(actor.run(None)))
    assert f"{type(answer).__name__}: {answer}" == words
    assert getattr(answer, "key", None) == getattr(met, "key", None)


def test_an_actor_goes_to_the_directory_of_relative_paths(place, tmp_path_factory, monkeypatch):
    """Of images, weights and a network's source; where its machine has no such directory it stays."""
    directory, config = place
    monkeypatch.chdir(directory)
    model = dataclasses.replace(config.model, name="net.py:Net", weights="parent.pt")
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, path="data"))
    found = planned((directory, config))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    resources = _Actor(found.tree, found.spec.options, directory)._worker.resources
    assert resources.layout(config).row_bytes
    assert len(resources.splits(config)[0]) == 60
    _Actor(found.tree, found.spec.options, directory / "gone")
    assert Path.cwd() == directory


def test_the_seconds_of_a_job_are_shared_by_its_networks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at each look, one a job."""
    found = planned(place)
    tree, point = found.tree, found.places[0]
    worker, silent_ = Worker(tree, found.spec.options), Silent()
    monkeypatch.setattr("fastwi.experiment.worker.time", SimpleNamespace(perf_counter=itertools.count().__next__))

    def seconds(*tasks: int) -> list[float]:
        job = Job(tuple((task,) for task in tasks), {}, frozenset(task for task in tasks if task < len(tree)), 1e9)
        return [m.seconds for m in worker.run(job, silent_).measurements]

    assert seconds(point.clone_node) == [1.0]
    assert seconds(*point.end_nodes) == [0.5, 0.5]
    assert seconds(*(probe for probe in tree.probes() if tree.start_of(probe) == point.average_node)) == [0.5, 0.5]


@pytest.mark.parametrize("together", [False, True])
def test_a_child_starts_with_zero_momentum_where_that_is_asked_for(place, together):
    """As its own job, and in one with the parent's epochs; its parent's state keeps its momentum."""
    directory, config = place
    experiment = dataclasses.replace(config.experiment, child_momentum="reset")
    found = planned((directory, dataclasses.replace(config, experiment=experiment)))
    tree, (point, *_) = found.tree, found.places
    parent, child = point.clone_node, point.end_nodes[0]
    worker, silent_ = Worker(tree, found.spec.options), Silent()
    write = frozenset([parent, child])
    if together:
        states = dict(worker.run(Job(((parent, child),), {}, write, 1e9), silent_).states)
    else:
        states = dict(worker.run(Job(((parent,),), {}, write, 1e9), silent_).states)
        states |= worker.run(Job(((child,),), {}, write, 1e9), silent_).states
    clone, found_child = states[tree.keys[parent]], states[tree.keys[child]]
    assert clone.momentum_MP.any()
    engine, (train, _) = worker.resources.engine(config), worker.resources.splits(config)
    inherited, expected = clone.clone_rows([0]), clone.clone_rows([0])
    expected.momentum_MP.zero_()
    for start in (inherited, expected):
        engine.train_epoch(start, train, [Noise(tree.noises[child])], 1)
    for name in ("weights_MP", "momentum_MP"):
        torch.testing.assert_close(getattr(found_child, name), getattr(expected, name), rtol=1e-6, atol=1e-7)
        assert (getattr(inherited, name) - getattr(expected, name)).abs().max() > 1e-4


def test_images_are_opened_once_for_all_that_use_the_same(place):
    _, config = place
    resources = Worker(planned(place).tree, SweepOptions()).resources
    kept, fewer, few_tested = (
        dataclasses.replace(config, data=dataclasses.replace(config.data, **changed))
        for changed in ({"last_batch": "keep"}, {"train_images": 50}, {"test_images": 10})
    )
    assert resources.splits(kept)[0] is resources.splits(config)[0]
    sizes = [tuple(map(len, resources.splits(each))) for each in (config, fewer, few_tested)]
    assert sizes == [(60, 20), (50, 20), (60, 10)]
    assert [resources.engine(each).iterations(resources.splits(each)[0]) for each in (kept, fewer)] == [3, 2]
