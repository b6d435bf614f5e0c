"""The tree of a sweep: what is shared, what names a state, what stays of it."""

import hashlib

import pytest
from mappings import config_from_mapping

from fastwi.config.sweep import Point, SweepOptions, SweepSpec, points
from fastwi.errors import UserError
from fastwi.experiment import planner
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.places import PointStates
from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.experiment.tree import OWN, Tree
from fastwi.report.plan import naive_epochs

INPUTS = Inputs("digest", {"train": 1000, "test": 100})


def sweep(axes: dict, options: dict | None = None, **sections) -> SweepSpec:
    engine = {"precision": "bf16"}
    base = config_from_mapping({"experiment": {"k": 2, "s": 1, "after": 1}, "engine": engine, **sections})
    return SweepSpec(base, {path: tuple(values) for path, values in axes.items()}, SweepOptions(**(options or {})))


def planned(spec: SweepSpec) -> PlannedSweep:
    return plan_sweep(spec, inputs_of=lambda _: INPUTS)


def grown(spec: SweepSpec) -> tuple[Tree, list[PointStates]]:
    found = planned(spec)
    return found.tree, found.places


def epochs_of(tree: Tree) -> dict[str, int]:
    """The keys of a tree's epochs, and their numbers."""
    return {tree.keys[node]: tree.epochs[node] for node in tree.epoch_nodes()}


def epoch_keys(spec: SweepSpec) -> set[str]:
    return set(epochs_of(planned(spec).tree))


GRID = {"experiment.k": [2, 4, 6], "experiment.s": [1, 2, 4], "experiment.after": [2]}


def paths(point: Point) -> set[tuple]:
    """Every epoch that the point trains, each as all that was done to its network: by the protocol's words alone."""
    e, seeds = point.config.experiment, point.config.seeds
    parent = (("init", seeds.init), *((seeds.parent_noise, epoch) for epoch in range(e.k)))
    done = {parent[: 2 + epoch] for epoch in range(e.k)}
    children = []
    for noise in seeds.child_noise:
        child = (*parent, *((noise, epoch) for epoch in range(e.k, e.k + e.s)))
        done |= {child[: e.k + 2 + i] for i in range(e.s)}
        children.append(child)
    average = (("average", tuple(children), e.weights),)
    for epoch in range(e.k + e.s, e.k + e.s + e.after):
        average = (*average, (seeds.average_noise, epoch))
        done.add(average)
    return done


@pytest.mark.parametrize(
    ("axes", "options", "count"),
    [
        (GRID, {"children": 8}, 6 + 3 * 8 * 4 + 9 * 4 * 2),
        ({"experiment.k": [0, 1], "experiment.s": [0, 2]}, {"children": 4}, 1 + 2 * 4 * 2 + 2 * 2 * 2),
        ({"experiment.k": [1, 3]}, {"children": 4, "tuples": "all", "parents": (0, 7)}, 2 * (3 + 2 * 4 + 2 * 6)),
        ({"experiment.s": [1, 2]}, {"children": 2, "alphas": (0.0, 0.25, 0.5)}, 2 + 2 * 2 + 2 * 3),
        ({"experiment.after": [0, 3]}, {"children": 6, "tuple_size": 3}, 2 + 6 + 2 * 3),
    ],
)
def test_epochs_of_a_sweep_are_those_of_its_points_each_once(axes, options, count):
    spec = sweep(axes, options)
    every = list(points(spec))
    tree, places = grown(spec)
    assert len(epochs_of(tree)) == len(set().union(*map(paths, every))) == count
    assert len(every) == len(places)
    assert naive_epochs(places) == sum(len(paths(point)) for point in every)


def test_children_trained_on_are_their_own_longer_paths():
    spec = sweep({"experiment.s": [1, 2]}, experiment={"k": 1, "after": 2, "continue_children": True})
    tree, places = grown(spec)
    assert len(epochs_of(tree)) == 1 + 2 * 4 + 2 * 2
    assert naive_epochs(places) == (1 + 2 * 3 + 2) + (1 + 2 * 4 + 2)
    assert [len(place.children[0]) for place in places] == [3, 4]
    assert places[0].children[0] == places[1].children[0][:3]
    tree, places = grown(sweep({}, experiment={"k": 1, "s": 1, "after": 2, "continue_parent": "total"}))
    assert naive_epochs(places) == len(epochs_of(tree)) == (1 + 2 + 2) + 2 * 1 + 2


def test_children_trained_on_at_another_rate_part_from_those_at_the_same():
    def end_keys(factor: float) -> list[tuple[str, ...]]:
        more = {"continue_children": True, "children_rate_factor": factor}
        tree, places = grown(sweep({}, experiment={"k": 1, "s": 1, "after": 2, **more}))
        assert len(epochs_of(tree)) == 1 + 2 * 3 + 2
        return [child for place in places for child in place.children]

    for same, dropped in zip(end_keys(1.0), end_keys(0.1), strict=True):
        assert [a == b for a, b in zip(same, dropped, strict=True)] == [True, False, False]


@pytest.mark.parametrize("s", ["1ep", "3ep", "3it", "1ep3it"])
@pytest.mark.parametrize("k", ["1ep", "2it"])
def test_momentum_is_reset_where_a_child_begins_and_not_where_it_is_trained_on(k, s):
    more = {"child_momentum": "reset", "continue_children": True, "children_rate_factor": 0.1}
    tree, (place,) = grown(sweep({}, experiment={"k": k, "s": s, "after": 2, **more}))
    starts = [(tree.keys[tree.before[node]], tree.noises[node]) for node in sorted(tree.resets)]
    assert starts == [(place.clone, 1), (place.clone, 2)]


def test_places_and_states():
    """A point's states hang together as the protocol says, and each stands after what it is made of."""
    spec = sweep({"experiment.k": [0, 2], "experiment.s": [0, 1]}, {"children": 4, "alphas": (0.25,)})
    tree, places = grown(spec)
    named = set(tree.measurement_keys())
    for point, place in zip(points(spec), places, strict=True):
        e, seeds = point.config.experiment, point.config.seeds
        assert (len(place.parent), len(place.children), len(place.after)) == (e.k, 2, e.after)
        average = tree.averages[tree.nodes[place.average]]
        assert tuple(tree.keys[child] for child in average.nodes) == place.ends
        assert average.weights == average.statistics == (0.75, 0.25)
        assert average.momentum == (0.0, 0.0)
        assert place.parent[-1:] in ((place.clone,), ())
        for noise, child, end in zip(seeds.child_noise, place.children, place.ends, strict=True):
            assert [tree.noises[tree.nodes[key]] for key in child] == [noise] * e.s
            assert end == (child[-1] if child else place.clone)
            assert not child or tree.before[tree.nodes[child[0]]] == tree.nodes[place.clone]
        after = tree.nodes[place.after[0]]
        assert (tree.keys[tree.before[after]], tree.epochs[after]) == (place.average, e.k + e.s + 1)
        assert {(state, [*place.treatments][1]) for state in (place.average, *place.ends)} <= named
        assert (place.average, OWN) in named
    for node in range(len(tree)):
        assert tree.before[node] < node
        assert all(child < node for child in (tree.averages[node].nodes if node in tree.averages else ()))
    assert [tree.nodes[key] for key in tree.keys] == list(range(len(tree)))


def test_a_schedule_changes_only_the_epochs_that_it_touches():
    base = sweep({"experiment.k": [6]}, schedule={"drop_epochs": [80]})
    tree, _ = grown(base)
    later = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [90], "drop_factor": 0.5}))
    assert later == set(epochs_of(tree))
    earlier = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [4]}))
    assert {epoch for key, epoch in epochs_of(tree).items() if key in earlier} == {1, 2, 3, 4}
    # 1000 images in batches of 128 are 7 iterations an epoch: 10 of warm-up end in the second.
    warm = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [80], "warmup_iterations": 10}))
    assert not warm & set(epochs_of(tree))  # all that follows starts elsewhere


def test_more_parents_and_children_leave_keys_alone():
    few = epoch_keys(sweep(GRID, {"children": 2}))
    assert few < epoch_keys(sweep(GRID, {"children": 4}))
    more = epoch_keys(sweep(GRID, {"children": 2, "parents": (0, 1)}))
    assert few < more
    assert len(more) == 2 * len(few)


def kept_epochs(spec: SweepSpec, keep: str) -> list[int]:
    found = planned(spec)
    return sorted(found.tree.epochs[node] for node in found.kept(keep))


def test_stops_and_ends():
    """Ends are what nothing is trained on from."""
    spec = sweep(GRID, {"children": 2})
    found = planned(spec)
    tree, ends = found.tree, found.kept("ends")
    assert {tree.epochs[node] for node in tree.stops} == {2, 4, 6} | {
        k + s + after for k in (2, 4, 6) for s in (1, 2, 4) for after in (0, 2)
    }
    assert all(tree.nodes[place.parent[-1]] in tree.stops for place in found.places)
    assert kept_epochs(spec, "all") == sorted(epochs_of(tree).values())
    assert kept_epochs(spec, "none") == []
    # Of two children the last at each k, and each average's last.
    assert sorted(tree.epochs[node] for node in ends) == sorted(
        [k + 4 for k in (2, 4, 6) for _ in range(2)] + [k + s + 2 for k in (2, 4, 6) for s in (1, 2, 4)]
    )
    assert ends.isdisjoint(tree.before)
    assert ends < tree.stops


@pytest.mark.parametrize(
    ("experiment", "keep", "epochs"),
    [
        ({"k": 1, "s": 1, "after": 2, "continue_children": True}, "ends", [4, 4, 4]),
        ({"k": 1, "s": 1, "after": 2, "continue_children": True}, "stops", [1, 2, 2, 4, 4, 4]),
        ({"k": 1, "s": 1, "after": 1, "rounds": 2}, "ends", [3, 3, 4]),
        ({"k": 2, "s": 0, "after": 1}, "ends", [2, 3]),
        ({"k": 0, "s": 0, "after": 1}, "stops", [1]),
        ({"k": 1, "s": 1, "after": 1, "continue_parent": "total"}, "stops", [1, 2, 2, 3, 4]),
    ],
)
def test_what_is_kept_of_children_that_are_trained_on_or_not_at_all(experiment, keep, epochs):
    assert kept_epochs(sweep({}, experiment=experiment), keep) == epochs


@pytest.mark.parametrize(
    ("axes", "options"),
    [({"experiment.k": [3, 60]}, {}), ({}, {"parents": tuple(range(20))}), ({}, {"children": 30, "tuples": "all"})],
)
def test_a_tree_too_large_is_refused_before_it_grows(monkeypatch, axes, options):
    monkeypatch.setattr(planner, "MOST_STATES", 50)
    with pytest.raises(UserError, match=r"sweep: its tree has \d+ epochs .*experiment\.k = \d+.*50 is the most"):
        grown(sweep(axes, options))
    assert len(grown(sweep({}, {"parents": (0, 1, 2)}))[0]) <= 50


@pytest.mark.parametrize(("measure", "probes"), [(("own", "recomputed"), 6 + 6 + 4), (("own",), 6)])
def test_probes_of_one_child_are_shared_by_its_pairs(measure, probes):
    """Averages under each treatment, children recomputed."""
    tree, places = grown(sweep({}, {"children": 4, "tuples": "all", "measure": measure}))
    assert len(places) == 6
    assert len(tree.probe_nodes) == probes
    assert len(places[0].treatments) == len(tree.treatments) == len(measure)


def test_probes_of_every_epoch():
    """Each epoch once, however many points share it; each average too, and names of before stay."""
    over_time = {"averages": ["lawa"]}
    plain = grown(sweep(GRID, trajectory=over_time))[0]
    every = {"experiment": {"measure": ["own", "recomputed"]}, "trajectory": over_time}
    tree, places = grown(sweep(GRID, {"measure": (OWN,)}, **every))
    assert tree.keys == plain.keys
    assert {*plain.measurement_keys()} < {*tree.measurement_keys()}
    probed = [tree.measurement_key(probe) for probe in tree.probes()]
    assert len(set(probed)) == len(probed)
    averages = {(place.average, treatment) for place in places for treatment in place.treatments}
    averages |= {
        (tree.keys[each.node], name) for place in places for each in place.over_time for name in each.treatments
    }
    epochs = {(key, places[0].recomputed[epoch].name) for key, epoch in epochs_of(tree).items()}
    assert set(probed) == averages | epochs
    names = {treatment.name for treatment in places[0].recomputed.values()}
    assert len(names) == max(tree.epochs)


@pytest.mark.parametrize(
    ("momentum", "alphas", "pull"),
    [("average", (0.5, 0.25), 0.5), ("average", (0.25, 0.0), 0.0), ("keep", (1.0, 0.5), 0.5)],
)
def test_a_pulled_child_has_the_momentum_of_its_own_average(momentum, alphas, pull):
    """Its weights are those of an average at another alpha, whose momentum is another one."""
    experiment = {"rounds": 2, "momentum": momentum, "pull": pull}
    tree, places = grown(sweep({}, {"alphas": alphas}, experiment=experiment))
    for alpha, place in zip(alphas, places, strict=True):
        expected = (1 - alpha, alpha) if momentum == "average" else (float(alpha < 1), float(alpha == 1))
        for node in (place.rounds[0].average_node, *place.rounds[1].start_nodes):
            assert tree.averages[node].momentum == expected


@pytest.mark.parametrize(
    ("step", "momentum", "nesterov", "refused"), [(3.0, 0.0, False, 26), (1.5, 0.9, True, 66), (10.0, 0.5, False, 9)]
)
def test_outer_steps_whose_sum_rounding_would_decide_are_refused(step, momentum, nesterov, refused):
    """Over many rounds; of 100 at the second the average was wrong in its third digit, where a plain loop is not."""
    outer = {"outer_step": step, "outer_momentum": momentum, "outer_nesterov": nesterov}
    grown(sweep({}, experiment={**outer, "rounds": refused - 1}))
    with pytest.raises(UserError, match=r"^experiment\.outer_step: .*experiment\.rounds"):
        grown(sweep({}, experiment={**outer, "rounds": refused}))


def test_keys_of_before():
    """Stores go on: these keys were named by the version before, and by KEY_VERSION 2."""
    spec = sweep(
        {"experiment.k": [0, 2], "schedule.warmup_iterations": [0, 10]}, {"children": 4, "alphas": (0.25,)},
        experiment={"s": 1, "after": 2, "batch_norm": "recompute", "continue_children": True,
                    "children_rate_factor": 0.1},
    )  # fmt: skip
    tree, places = grown(spec)
    names = "\n".join(sorted(f"{state} {treatment}" for state, treatment in tree.measurement_keys()))
    assert (len(tree), len(places)) == (77, 8)
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "02e6f0bfbb284480"


@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle"])
def test_rates_at_the_average_leave_the_past_alone(name):
    """A sweep's averages share their children; each trains on by rates of its own, as children trained on do."""
    spec = sweep(
        {"schedule.at_average": ["keep", "restart", "anneal"]},
        experiment={"k": 2, "s": 1, "after": 3, "continue_children": True},
        schedule={"name": name, "end": 9},
    )
    _, places = grown(spec)
    assert len({(place.average, place.ends) for place in places}) == 1
    further = [place.after for place in places] + [place.children[0][1:] for place in places]
    assert len({states[0] for states in further}) == 6


def test_a_warm_up_past_the_end_of_a_curve_is_refused():
    late = {"end": 2, "warmup_iterations": 14}  # 1000 images in batches of 128 are 7 iterations an epoch
    grown(sweep({}, schedule=late))
    with pytest.raises(UserError, match=r"schedule\.warmup_iterations: 14 .*schedule\.end"):
        grown(sweep({}, schedule={**late, "name": "cosine"}))
    grown(sweep({}, schedule={**late, "name": "cosine", "warmup_iterations": 13}))


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("test", 100)])
def test_no_more_images_than_the_dataset_has(split, count):
    planned(sweep({}, data={f"{split}_images": count}))
    with pytest.raises(UserError, match=rf"data\.{split}_images: {count + 1} asked for, data/cifar10 has {count}"):
        planned(sweep({}, data={f"{split}_images": count + 1}))


def test_a_batch_is_of_all_training_images_at_most():
    grown(sweep({}, optimizer={"batch_size": 1000}))
    with pytest.raises(UserError, match=r"optimizer\.batch_size: 1001 "):
        grown(sweep({}, optimizer={"batch_size": 1001}))


KEPT = {"last_batch": "keep"}


def test_a_kept_last_batch_of_one_image_is_refused():
    """1000 images in batches of 128 leave 104, in batches of 37 one."""
    grown(sweep({}, data=KEPT))
    grown(sweep({}, data=KEPT, optimizer={"batch_size": 1}))
    one = {"optimizer": {"batch_size": 37}}
    grown(sweep({}, **one))
    with pytest.raises(UserError, match=r"data\.last_batch: .* 1 of 1000 images.*data\.train_images"):
        grown(sweep({}, data=KEPT, **one))
    few = sweep({}, {"measure": ("own", "recomputed")}, data=KEPT, experiment={"recompute_images": 257})
    with pytest.raises(UserError, match=r"data\.last_batch: .* 1 of 257 images.*experiment\.recompute_images"):
        grown(few)


def test_a_kept_last_batch_is_a_step_in_rates_and_recomputation():
    spec = sweep({}, {"measure": ("own", "recomputed")}, data=KEPT, schedule={"drop_epochs": ["8it"]})
    found = planned(spec)
    assert [*found.places[0].treatments.values()][1].images == 1000
    # An epoch of eight iterations ends at the drop; one of seven does not.
    whole = epoch_keys(sweep({}, data=KEPT, schedule={"drop_epochs": [1]}))
    assert epoch_keys(spec) == whole
    dropped = [epoch_keys(sweep({}, schedule={"drop_epochs": drops})) for drops in (["8it"], [1])]
    assert dropped[0] != dropped[1]
