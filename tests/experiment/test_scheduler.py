"""The scheduler: several processes on one store, limits of time and memory, what is damaged and what fails."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from begun_stores import claims
from listeners import Silent, Stopped
from mappings import config_from_mapping
from small_networks import trained
from tiny_runs import few_digits, tiny_network

import fastwi
import fastwi.experiment.execution as execution
import fastwi.experiment.ready as ready
import fastwi.experiment.scheduler as scheduler
from data_prep.progress import silent
from data_prep.write import write_dataset
from fastwi.config.sweep import SweepOptions, SweepSpec
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.scheduler import Executor, Limits, carry_out, limits_of
from fastwi.experiment.store import DamagedState, Owner, Store
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.experiment.worker import Job, Outcome, Report, Worker
from fastwi.models.registry import _BUILDERS

WIDTH = 0.0625
ONE_BY_ONE, EPOCH_BY_EPOCH, IN_CHAINS = Limits(1, 1, 60.0), Limits(1, 1, 0.0), Limits(4, 8, 60.0)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that waits without end fails here, after so many looks at the store."""
    left, look = [500], Store.look

    def looked(store: Store, *what: Iterable[object]) -> object:
        left[0] -= 1
        assert left[0], "it waits without end"
        return look(store, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "look", looked)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a dataset and weights; for as long as there is one, "convnet" is a tiny network.

    Parents start from the weights: two threads can't draw from global generators at the same time.
    """
    here = tmp_path_factory.mktemp("inputs")
    (here / "data").mkdir()
    write_dataset(few_digits(40, 20), here / "data", "raw", silent)
    fastwi.save_state_dict(trained(tiny_network(10, WIDTH), 0).state_dict(), here / "parent.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_BUILDERS, "convnet", tiny_network)
        yield here


AXES = {"experiment.k": (1, 3), "experiment.s": (1, 4)}


def planned(
    inputs: Path,
    store: Path,
    axes: Mapping[str, tuple[object, ...]] = AXES,
    experiment: Mapping[str, object] = {},
    **options: object,
) -> PlannedSweep:
    """Two parents, cloned after 1 and 3 epochs into two children of 1 and 4; their averages are trained on."""
    base = config_from_mapping({
        "data": {"path": str(inputs / "data")},
        "model": {"name": "convnet", "width": WIDTH, "weights": str(inputs / "parent.pt")},
        "optimizer": {"batch_size": 20}, "augment": {"padding": 1}, "schedule": {"drop_epochs": []},
        "experiment": {"after": 1, "recompute_images": 20, **experiment},
        "engine": {"device": "cpu", "precision": "fp32", "backend": "eager", "threads": 1},
    })  # fmt: skip
    given = {"store": str(store), "parents": (0, 1), **options}
    return plan_sweep(SweepSpec(base, axes, SweepOptions(**given)))  # type: ignore


Do = Callable[[Job, Report], Outcome]


def failing_at(bad: int, tried: list[int]) -> Callable[[Do], Do]:
    """Of a worker's `run` one that fails at jobs with the task `bad`; `tried` are the tasks of these jobs."""

    def failing(run: Do) -> Do:
        def do(job: Job, report: Report) -> Outcome:
            if bad in job.tasks:
                tried.extend(job.tasks)
                raise RuntimeError("no luck\nwith this")
            return run(job, report)

        return do

    return failing


def carried_out(
    sweep: PlannedSweep, limits: Limits, listener: Silent | None = None, do: Callable[[Do], Do] | None = None
) -> dict[MeasurementKey, str]:
    """Carry a sweep out by a worker of its own; `do` makes of its `run` the one that is used."""
    store = Path(sweep.spec.options.store)
    worker = Worker(sweep.tree, sweep.spec.options)
    if do is not None:
        worker.run = do(worker.run)  # type: ignore[method-assign]
    with Store.open(store) as opened:
        return carry_out(opened, Executor(worker), listener or Silent(), limits)


def measured(sweep: PlannedSweep) -> dict[object, object]:
    with Store.open(sweep.spec.options.store, create=False) as store:
        return {name: m.result() for name, m in store.measurements().items()}


def attempts(sweep: PlannedSweep) -> dict[object, int]:
    with Store.open(sweep.spec.options.store, create=False) as store:
        return dict(store.attempts())


def states(sweep: PlannedSweep) -> set[str]:
    with Store.open(sweep.spec.options.store, create=False) as store:
        assert {path.stem for path in (store.directory / "states").rglob("*.safetensors")} == store.states()
        return store.states()


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[object, object]:
    """The results of an undisturbed sweep."""
    sweep = planned(inputs, tmp_path_factory.mktemp("whole") / "store")
    assert carried_out(sweep, IN_CHAINS) == {}
    found = measured(sweep)
    assert set(found) == set(sweep.tree.measurement_keys())
    assert set(attempts(sweep).values()) == {1}
    tree = sweep.tree
    with Store.open(sweep.spec.options.store, create=False) as store:
        assert all(m.epoch == tree.epochs[tree.nodes[m.state]] for m in store.measurements().values())
    return found


def names_of(sweep: PlannedSweep, tasks: Counter[int]) -> Counter[object]:
    return Counter({sweep.tree.measurement_key(task): count for task, count in tasks.items()})


def carried_out_by_two(
    sweeps: Sequence[PlannedSweep], limits: Sequence[Limits], after: int
) -> Counter[MeasurementKey]:
    """Each carries out a sweep; the other one begins when the first has measured `after`. How often each was done."""
    begin = threading.Event()

    class Calling(Silent):
        def measured(self, *what) -> None:  # type: ignore[no-untyped-def]
            super().measured(*what)
            if self.reports == after:
                begin.set()

    listeners, failures = (Calling(), Silent()), []

    def other() -> None:
        try:
            begin.wait(60)
            carried_out(sweeps[1], limits[1], listeners[1])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    carried_out(sweeps[0], limits[0], listeners[0])
    thread.join()
    assert failures == []
    done = [names_of(sweep, listener.here) for sweep, listener in zip(sweeps, listeners, strict=True)]
    return done[0] + done[1]


@pytest.mark.parametrize(
    ("mine", "others", "after"),
    [  # every pair of two of them
        (ONE_BY_ONE, EPOCH_BY_EPOCH, 1), (ONE_BY_ONE, IN_CHAINS, 5),
        (IN_CHAINS, EPOCH_BY_EPOCH, 5), (IN_CHAINS, IN_CHAINS, 1),
    ],
)  # fmt: skip
def test_two_carry_out_one_sweep(
    inputs: Path, tmp_path: Path, whole, mine: Limits, others: Limits, after: int
) -> None:
    """Each task is done by one of them, once."""
    sweep = planned(inputs, tmp_path / "store", keep="none")
    done = carried_out_by_two([sweep, sweep], [mine, others], after)
    assert measured(sweep) == whole
    assert done == Counter(dict.fromkeys(whole, 1))
    assert set(attempts(sweep).values()) == {1}
    assert states(sweep) == set()


def test_two_carry_out_sweeps_that_share_a_part(inputs: Path, tmp_path: Path, whole) -> None:
    """Each with the results that it has alone, and what they share is done once.

    Also the parents' first epoch, whose state only the first is to have.
    """
    sweeps = [
        planned(inputs, tmp_path / "store", {"experiment.k": k, "experiment.s": s}, name=name)
        for name, k, s in (("first", (1, 3), (1,)), ("second", (3,), (1, 4)))
    ]
    keys = [set(sweep.tree.measurement_keys()) for sweep in sweeps]
    assert keys[0] & keys[1] < keys[0] < keys[0] | keys[1] < set(whole)
    done = carried_out_by_two(sweeps, [EPOCH_BY_EPOCH, ONE_BY_ONE], 5)
    expected = {name: whole[name] for name in keys[0] | keys[1]}
    assert measured(sweeps[0]) == expected
    assert done == Counter(dict.fromkeys(expected, 1))


def test_a_state_that_another_sweep_keeps_is_stored(inputs: Path, tmp_path: Path, monkeypatch) -> None:
    """Though this one passes through it, and has no use for it before it is written."""
    sweep = planned(inputs, tmp_path / "store", {"experiment.k": (3,), "experiment.s": (1,)}, keep="none")

    class Late(scheduler.Writer):
        def _write(self, *what) -> None:  # type: ignore[no-untyped-def]
            threading.Event().wait(0.2)
            super()._write(*what)

    monkeypatch.setattr(scheduler, "Writer", Late)
    kept = {sweep.places[0].parent[0]}
    with Store.open(sweep.spec.options.store) as store:
        store.keep(kept)
    assert carried_out(sweep, IN_CHAINS) == {}
    assert states(sweep) == kept


def test_what_is_to_be_made_again_is_made_by_one_process(inputs: Path, tmp_path: Path, monkeypatch) -> None:
    """Of a finished sweep more is to stay, and two processes have planned all of it."""
    axes = {"experiment.k": (2,), "experiment.s": (1,)}
    assert carried_out(planned(inputs, tmp_path / "store", axes, keep="none"), IN_CHAINS) == {}
    sweep, mine, others = planned(inputs, tmp_path / "store", axes), Silent(), Silent()

    def stop() -> None:
        raise Stopped

    def after_the_other(run: Do) -> Do:
        def do(job: Job, report: Report) -> Outcome:
            if not others.here:  # it does all that does not wait for this job
                with pytest.raises(Stopped):
                    carried_out(sweep, ONE_BY_ONE, others)
            return run(job, report)

        return do

    while_waiting(monkeypatch, stop)
    assert carried_out(sweep, ONE_BY_ONE, mine, after_the_other) == {}
    assert mine.here
    assert mine.here + others.here == Counter(sweep.tree.epoch_nodes())
    assert states(sweep) == {sweep.tree.keys[node] for node in sweep.tree.stops}


def while_waiting(monkeypatch: pytest.MonkeyPatch, *others: Callable[[], object]) -> None:
    """Have other processes do something, one after the other, each time that a scheduler waits for them."""
    left = list(others)
    monkeypatch.setattr(scheduler.time, "sleep", lambda _: left.pop(0)())


def test_another_process_does_all_meanwhile(inputs, tmp_path, whole, monkeypatch) -> None:
    """And removes what it has no more use for: nothing is made again to go on from."""
    sweep = planned(inputs, tmp_path / "store", keep="none")
    monkeypatch.setattr(ready, "LONGEST_CHAIN", 2)
    with Store.open(sweep.spec.options.store) as store, store.owner() as owner:
        owner.claim(sweep.tree.measurement_keys())

        def do_all() -> None:
            owner.close()
            carried_out(sweep, EPOCH_BY_EPOCH)

        while_waiting(monkeypatch, do_all)
        listener = Silent()
        carried_out(sweep, IN_CHAINS, listener)
    assert not listener.here
    assert measured(sweep) == whole
    assert set(attempts(sweep).values()) == {2}
    assert states(sweep) == set()


def test_what_another_process_makes_stays_for_those_that_wait_for_it(inputs, tmp_path, whole, monkeypatch) -> None:
    """Its own children are others, and when they are trained it has no more use for their parents."""
    axes = {"experiment.k": (3,), "experiment.s": (1,)}
    mine, theirs = (
        planned(inputs, tmp_path / "store", axes, {"child_momentum": momentum}, keep="none")
        for momentum in ("inherit", "reset")
    )
    parents = [(key, OWN) for place in mine.places for key in place.parent]
    with Store.open(mine.spec.options.store) as store, store.owner() as owner:
        assert owner.claim(parents) == parents

        def do_theirs() -> None:
            owner.close()
            carried_out(theirs, IN_CHAINS)

        while_waiting(monkeypatch, do_theirs)
        listener = Silent()
        carried_out(mine, IN_CHAINS, listener)
    done = names_of(mine, listener.here)
    assert done == Counter(set(mine.tree.measurement_keys()).difference(parents))
    assert {name: whole[name] for name in (*done, *parents)}.items() <= measured(mine).items()
    assert states(mine) == set()


@pytest.mark.parametrize("gone", [False, True], ids=["states stored", "states gone"])
def test_another_process_dies(inputs, tmp_path, whole, monkeypatch, gone) -> None:
    """What it was at is done, with the states that it began from or without them."""
    sweep = planned(inputs, tmp_path / "store", keep="none")
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.Writer, "drop", lambda *_: None)  # killed before it removes what nothing needs
        with pytest.raises(Stopped):
            carried_out(sweep, EPOCH_BY_EPOCH, Silent(30))
    with Store.open(sweep.spec.options.store) as store, store.owner() as owner:
        assert 0 < len(store.measurements()) < len(whole)
        assert not gone or store.drop_states(store.states())
        left = owner.claim(sweep.tree.measurement_keys())
        assert len(left) + len(store.measurements()) == len(whole)
        while_waiting(monkeypatch, owner.close)
        listener = Silent()
        carried_out(sweep, IN_CHAINS, listener)
    assert measured(sweep) == whole
    assert names_of(sweep, listener.here).keys() >= set(left)
    assert (len(listener.here) > len(left)) == gone
    assert listener.lines == []
    assert states(sweep) == set()


def test_states_that_vanish_before_they_are_pinned_are_planned_for(inputs, tmp_path, whole, monkeypatch) -> None:
    """Another process drops them between the look at the store and the pin."""
    sweep = planned(inputs, tmp_path / "store", keep="none")
    with pytest.raises(Stopped):
        carried_out(sweep, EPOCH_BY_EPOCH, Silent(30))
    pin, plans = Owner.pin, list[int]()

    def dropped_before(owner: Owner, keys: Iterable[str]) -> None:
        if not plans:
            with Store.open(sweep.spec.options.store) as other:
                assert other.drop_states(other.states())
            plans.append(0)
        pin(owner, keys)

    class Planned(Silent):
        def planned(self, left: Sequence[int]) -> None:
            plans.append(len(left))

    monkeypatch.setattr(Owner, "pin", dropped_before)
    listener = Planned()
    assert carried_out(sweep, IN_CHAINS, listener) == {}
    assert measured(sweep) == whole
    assert plans[1:] == [sum(listener.here.values())]  # the one plan has what is done again


def test_nothing_is_claimed_of_a_chain_that_another_process_has_a_part_of(
    inputs, tmp_path, whole, monkeypatch
) -> None:
    sweep = planned(inputs, tmp_path / "store")
    child = [(key, OWN) for key in sweep.places[-1].children[0]]
    with Store.open(sweep.spec.options.store) as store, store.owner() as owner:
        owner.claim(child[1:2])
        while_waiting(monkeypatch, lambda: None, lambda: None, owner.close)
        carried_out(sweep, IN_CHAINS)
    assert measured(sweep) == whole
    counts = attempts(sweep)
    assert [counts.pop(name) for name in child] == [1, 2, 1, 1]
    assert set(counts.values()) == {1}


def test_without_time_a_stop_loses_the_job_in_progress_alone(inputs, tmp_path, whole) -> None:
    for stop in (1, 2, 7, 20):
        sweep, listener = planned(inputs, tmp_path / f"{stop}"), Silent(stop)
        with pytest.raises(Stopped):
            carried_out(sweep, EPOCH_BY_EPOCH, listener)
        *kept, _ = listener.here  # one a job, in order
        assert set(measured(sweep)) == {sweep.tree.measurement_key(task) for task in kept}
        carried_out(sweep, EPOCH_BY_EPOCH)
        assert measured(sweep) == whole
        again = [count for count in attempts(sweep).values() if count > 1]
        assert len(again) <= 4  # the rest of its chain was claimed too


def test_a_damaged_state_is_made_again(inputs, tmp_path, whole) -> None:
    sweep = planned(inputs, tmp_path / "store", keep="none")
    with pytest.raises(Stopped):
        carried_out(sweep, EPOCH_BY_EPOCH, Silent(30))
    before = measured(sweep)
    paths = list((tmp_path / "store" / "states").rglob("*.safetensors"))
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    listener = Silent()
    assert carried_out(sweep, IN_CHAINS, listener) == {}
    assert measured(sweep) == whole
    assert listener.lines
    assert all(re.search(r"SHA-256.*; it is trained again$", line) for line in listener.lines)
    assert sum(listener.here.values()) > len(whole) - len(before)
    assert states(sweep) == set()


@pytest.mark.parametrize("limits", [ONE_BY_ONE, IN_CHAINS], ids=["one by one", "together"])
def test_a_job_that_fails_takes_along_what_needs_it_and_nothing_else(inputs, tmp_path, whole, limits) -> None:
    sweep = planned(inputs, tmp_path / "store", keep="none")
    tree, failed = sweep.tree, list[int]()
    failing = failing_at(tree.nodes[sweep.places[-1].children[0][1]], failed)

    class Watching(Silent):
        def measured(self, *what) -> None:  # type: ignore[no-untyped-def]
            super().measured(*what)
            with Store.open(sweep.spec.options.store) as store:
                assert claims(store).keys().isdisjoint(map(tree.measurement_key, failed))

    listener = Watching()
    gone = carried_out(sweep, limits, listener, failing)
    lost = set(failed)
    for task in tree.tasks():
        if any(source in lost for source in tree.needs(task)):
            lost.add(task)
    assert set(gone) == {tree.measurement_key(task) for task in lost}
    assert set(gone.values()) == {"RuntimeError: no luck"}
    assert measured(sweep) == {name: found for name, found in whole.items() if name not in gone}
    assert listener.lines == [f"{len(failed)} tasks failed, and {len(lost)} cannot be done: RuntimeError: no luck"]
    with Store.open(sweep.spec.options.store) as store:
        assert claims(store) == {}
    assert carried_out(sweep, limits) == {}
    assert measured(sweep) == whole


def test_what_failed_has_nothing_made_again_by_another_plan(inputs, tmp_path, whole, monkeypatch) -> None:
    sweep = planned(inputs, tmp_path / "store", keep="none")
    failing = failing_at(sweep.tree.nodes[sweep.places[-1].children[0][1]], [])
    listener = Silent()
    with Store.open(sweep.spec.options.store) as store, store.owner() as owner:
        assert owner.claim([(sweep.places[0].average, OWN)])
        while_waiting(monkeypatch, owner.close)
        gone = carried_out(sweep, IN_CHAINS, listener, failing)
    assert names_of(sweep, listener.here) == Counter(whole.keys() - gone.keys())
    assert states(sweep) == set()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_state_goes_whose_users_were_given_up_while_it_was_made(inputs, tmp_path, bad: int) -> None:
    """One child of two fails while the other is trained to its end: no average is made of that."""
    sweep = planned(inputs, tmp_path / "store", keep="none", measure=(OWN,))
    tree, children = sweep.tree, sweep.places[-1].children
    last, fails = (tree.nodes[children[child][-1]] for child in (1 - bad, bad))
    worker, done = Worker(tree, sweep.spec.options), list[int]()

    class Several(Executor):
        jobs = 50

        def wait(self) -> tuple[Job, Outcome | Exception]:
            self._waiting.sort(key=lambda item: (last not in item[0].tasks, fails not in item[0].tasks))
            done.extend(self._waiting[-1][0].tasks)
            return super().wait()

    worker.run = failing_at(fails, [])(worker.run)  # type: ignore[method-assign]
    with Store.open(sweep.spec.options.store) as store:
        assert carry_out(store, Several(worker), Silent(), ONE_BY_ONE)
    assert done.index(fails) < done.index(last)
    assert states(sweep) == set()


def test_a_job_that_meets_a_damaged_state_gives_its_claims_back_at_once(inputs, tmp_path, whole) -> None:
    """Other processes need not wait for the jobs that are under way beside it."""
    sweep = planned(inputs, tmp_path / "store")
    tree, worker, met = sweep.tree, Worker(sweep.tree, sweep.spec.options), list[int]()
    run = worker.run

    def do(job: Job, report: Report) -> Outcome:
        if job.files and not met:
            met.extend(job.tasks)
            raise DamagedState("states/x: damaged", next(iter(job.files)))
        if met:
            with Store.open(sweep.spec.options.store) as store:
                free.append(claims(store).keys().isdisjoint(map(tree.measurement_key, met)))
        return run(job, report)

    class Several(Executor):
        jobs = 3

        def holds(self, node: int) -> bool:
            return False

    worker.run, free = do, list[bool]()  # type: ignore[method-assign]
    with Store.open(sweep.spec.options.store) as store:
        assert carry_out(store, Several(worker), Silent(), ONE_BY_ONE) == {}
    assert free[0]
    assert measured(sweep) == whole


@pytest.mark.parametrize("momentum", ["reset", "average", "keep"])
def test_averages_that_some_points_train_on_and_others_do_not(inputs, tmp_path, momentum: str) -> None:
    """They start with the momentum that they have by themselves, in whatever memory they were measured."""
    found = []
    for after in ((2,), (0, 2)):
        axes = {"experiment.s": (1, 2), "experiment.after": after}
        treatment = {"k": 1, "batch_norm": "recompute", "momentum": momentum}
        sweep = planned(inputs, tmp_path / f"{len(after)}", axes, treatment)
        assert carried_out(sweep, ONE_BY_ONE) == {}
        found.append(measured(sweep))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("path", "values", "experiment", "measure"),
    [
        ("augment.padding", (0, 2), {}, (OWN, "recomputed")),
        ("experiment.recompute_images", (20, 40), {"batch_norm": "recompute"}, (OWN,)),
    ],
)
def test_points_done_together_are_as_alone(inputs, tmp_path, path, values, experiment, measure) -> None:
    def found(*some: int) -> dict[object, object]:
        axes = {"experiment.k": (1,), "experiment.s": (1,), path: some}
        sweep = planned(inputs, tmp_path / f"{some}", axes, experiment, measure=measure)
        assert carried_out(sweep, Limits(4, 16, 60.0)) == {}  # all probes in one job
        return measured(sweep)

    assert found(*values) == found(values[0]) | found(values[1])


@pytest.mark.parametrize("limits", [ONE_BY_ONE, IN_CHAINS], ids=["one by one", "together"])
def test_epochs_of_a_chain_have_settings_of_their_own(inputs, tmp_path, limits: Limits) -> None:
    """Two parents whose rates drop at other epochs are trained together where these agree; the second half later."""
    drops, axes = ((1,), (2,)), {"experiment.k": (3,), "experiment.s": (1,)}

    def done(store: str, some: tuple[tuple[int, ...], ...], **options: object) -> dict[object, object]:
        sweep = planned(inputs, tmp_path / store, {"schedule.drop_epochs": some, **axes}, **options)
        assert carried_out(sweep, limits) == {}
        return measured(sweep)

    whole = done("whole", drops)
    for parent, drop in enumerate(drops):
        done("parts", (drop,), keep="none", parents=(parent,))
    assert done("parts", drops, keep="none") == whole


def test_limits_are_what_the_memory_holds() -> None:
    def limits(**options: object) -> Limits:
        return limits_of(SweepOptions(checkpoint_seconds=7.0, **options), 2**20, 32)  # type: ignore[arg-type]

    assert limits(memory_GiB=4.0) == Limits(32, 409, 7.0, 2048)  # what is fastest, and a fifth of the rows
    assert limits(memory_GiB=4.0, population=100) == Limits(100, 409, 7.0, 2048)
    assert limits(memory_GiB=0.125) == Limits(21, 12, 7.0, 64)
    assert limits(memory_GiB=0.125, population=100) == Limits(21, 12, 7.0, 64)
    assert limits(memory_GiB=0.0) == Limits(1, 1, 7.0, 0)


@pytest.mark.parametrize("decays", [(0.0, 0.9), (0.9, 0.0)])
def test_the_memory_is_shared_by_the_largest_networks_of_a_sweep(inputs, tmp_path, monkeypatch, decays) -> None:
    """Those with a moving average of their weights, on whichever place of the axis."""
    axes = {"experiment.k": (1,), "optimizer.ema_decay": decays}
    sweep, given = planned(inputs, tmp_path / "store", axes, memory_GiB=1.0), list[Limits]()
    monkeypatch.setattr(execution, "carry_out", lambda *what: given.append(what[-1]) or {})
    worker = execution.worker_for(sweep)
    with Store.open(sweep.spec.options.store) as store:
        assert execution.carry_out_planned(sweep, worker, store, Silent()) == []
    _, moving = sorted({worker.resources.layout(point.config).row_bytes for point in sweep.points})
    assert [limits.rows for limits in given] == [2**29 / moving]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("data.image_size", (8, 16)), ("engine.precision", ("fp32", "bf16")), ("optimizer.batch_size", (10, 20)),
        ("optimizer.ema_decay", (0.0, 0.9)),
    ],
)  # fmt: skip
def test_networks_of_each_kind_are_tried_before_any_is_trained(inputs, tmp_path, monkeypatch, path, values) -> None:
    axes, tried = {"experiment.k": (1,), "experiment.s": (1,), path: values}, list[object]()
    section, _, name = path.partition(".")
    monkeypatch.setattr(
        Resources, "tried_engine", lambda _, config: tried.append(getattr(getattr(config, section), name))
    )
    execution.worker_for(planned(inputs, tmp_path / "store", axes))
    assert tried == list(values)


@pytest.mark.parametrize(("rows", "most"), [(10, 2), (9, 1)])
def test_a_job_brings_no_more_networks_than_the_memory_holds(inputs, tmp_path, rows: int, most: int) -> None:
    """Two averages take three rows each, and one for each of their four children: measured, and trained on."""
    sweep = planned(inputs, tmp_path / "store", {"experiment.k": (1,), "experiment.s": (1,)}, measure=(OWN,))
    tree, jobs = sweep.tree, list[Job]()

    def recorded(run: Do) -> Do:
        def do(job: Job, report: Report) -> Outcome:
            jobs.append(job)
            return run(job, report)

        return do

    assert carried_out(sweep, Limits(8, 8, 60.0, rows), do=recorded) == {}
    of_averages = [job for job in jobs if tree.start_of(job.tasks[0]) in tree.averages]
    assert {job.tasks[0] < len(tree) for job in of_averages} == {False, True}
    assert max(len(job.chains) for job in of_averages) == most
