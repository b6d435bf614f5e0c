"""Networks that are cloned, averaged and ended within epochs: the tree, what is trained on what, and names."""

import random
from dataclasses import replace

import pytest
import torch
from test_planner import epoch_keys, planned, sweep
from test_run import CPU, config_of, run, tensors

from fastwi.config.time import Time, iterations_of, read_time
from fastwi.data.noise import Noise
from fastwi.data.split import open_splits
from fastwi.engine.choose import build_network
from fastwi.engine.loop import LoopEngine
from fastwi.errors import UserError
from fastwi.population import Population

PER_EPOCH = 7  # of the planner's tests: 1000 images in batches of 128


def experiment(k, s, after, **more) -> dict:
    return {"experiment": {"k": k, "s": s, "after": after, **more}}


def trained(done: tuple, begun: int, last: int, noise: int) -> list[tuple]:
    """A network's states up to iteration `last`, each as all that was done to it."""
    states = []
    for end in [i for i in range(begun + 1, last) if i % PER_EPOCH == 0] + [last] * (last > begun):
        done = (*done, (noise, begun, end))
        begun = end
        states.append(done)
    return states


def test_trajectories_are_cut_at_ends_of_epochs_and_at_their_own(seed):
    draw = random.Random(seed)
    times = [read_time(f"{i}it", "epochs") for i in draw.sample([i for i in range(25) if i % PER_EPOCH], 4)]
    axes = {"experiment.k": [*times[:2], 1], "experiment.s": [*times[2:], 0, 2, Time("8ep-k")]}
    found, keys = planned(sweep(axes, {"children": 4}, **experiment(1, 1, Time("9it")))), dict[tuple, str]()
    for point, place in zip(found.points, found.places, strict=True):
        e, seeds = point.config.experiment, point.config.seeds
        k, s, after = (iterations_of(time, PER_EPOCH) for time in (e.k, e.s, e.after))
        s = s - k if e.s == "8ep-k" else s
        parent = trained(("initial",), 0, k, seeds.parent_noise)
        clone = [("initial",), *parent][-1]
        children = [trained(clone, k, k + s, noise) for noise in seeds.child_noise]
        average = ("average", *([clone, *child][-1] for child in children))
        paths = [(parent, place.parent), (trained(average, k + s, k + s + after, seeds.average_noise), place.after)]
        for states, named in [*paths, *zip(children, place.children, strict=True)]:
            for state, key in zip(states, named, strict=True):
                assert keys.setdefault(state, key) == key
        assert (place.k, place.s, place.end) == (k / PER_EPOCH, s / PER_EPOCH, (k + s) / PER_EPOCH)
    assert len(set(keys.values())) == len(keys) == len(list(found.tree.epoch_nodes()))


def test_equal_times_have_equal_names():
    whole = epoch_keys(sweep({}, **experiment(2, 1, 1)))
    assert epoch_keys(sweep({}, **experiment("14it", "1ep", "7it"))) == whole
    assert epoch_keys(sweep({}, **experiment("1ep7it", "3ep-k", 1))) == whole
    assert not epoch_keys(sweep({}, **experiment("13it", 1, 1))) & whole - epoch_keys(
        sweep({}, **experiment(1, 0, 0))
    )


def test_a_child_trained_on_is_the_one_that_trains_for_longer():
    """Where it is averaged within an epoch that epoch is not divided, unless it goes on at another rate."""

    def last(s: str, after: str, **more) -> list[str]:
        (place,) = planned(sweep({}, **experiment("3it", s, after, **more))).places
        return [states[-1] for states in place.children]

    longer = last("2ep", "0ep")
    on = {"continue_children": True}
    assert last("1ep2it", "5it", **on) == longer
    for same, other in zip(longer, last("1ep2it", "5it", children_rate_factor=0.5, **on), strict=True):
        assert same != other


def test_times_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"axes\.experiment\.k: 1 and 7it.*7 iterations"):
        planned(sweep({"experiment.k": [1, Time("7it")]}))
    with pytest.raises(UserError, match=r"axes\.experiment\.k: 1 and 7it.*7 iterations"):  # of 15 they are two times
        planned(sweep({"optimizer.batch_size": [64, 128], "experiment.k": [1, Time("7it")]}))
    with pytest.raises(UserError, match=r"axes\.experiment\.after: 1 and 7it.*7 iterations"):
        planned(sweep({"experiment.after": [1, Time("7it")]}))
    planned(sweep({}, schedule={"drop_epochs": [1, "8it"]}))
    with pytest.raises(UserError, match=r"schedule\.drop_epochs: .*7 iterations: 1, 7it"):
        planned(sweep({}, schedule={"drop_epochs": [1, "7it"]}))
    planned(sweep({"experiment.k": [1, 3], "experiment.s": [1, Time("3ep-k")]}))
    with pytest.raises(UserError, match=r"axes\.experiment\.s: 1 and 3ep-k.*k = 2"):
        planned(sweep({"experiment.k": [1, 2], "experiment.s": [1, Time("3ep-k")]}))  # pairs would count twice
    with pytest.raises(UserError, match=r"experiment\.s: 1ep-k.*k = 8it"):
        planned(sweep({}, **experiment("8it", "1ep-k", 1)))


@pytest.fixture(scope="module")
def within(digits_directory, tmp_path_factory):
    """A run of 4 steps an epoch that clones after 6, averages after 11 and trains on up to 18; 12 of warm-up."""
    config = config_of(digits_directory, k="1ep2it", s="5it", after="7it", continue_children=True)
    optimizer, schedule = replace(config.optimizer, batch_size=25), replace(config.schedule, warmup_iterations=12)
    config = replace(config, optimizer=optimizer, schedule=schedule)
    directory = tmp_path_factory.mktemp("within")
    return config, directory, run(config, directory)


def test_networks_within_epochs_are_trained_as_in_plain_loops(within):
    config, directory, rows = within
    train, *_ = open_splits(config.data, CPU)
    engine = LoopEngine(build_network(config, 10), config)
    steps = engine.iterations(train)
    assert steps == 4

    def plain(population: Population, noise: int, first: int, last: int) -> Population:
        """One step after the other, of the order of the epoch in which it is."""
        population = population.clone_rows([0])
        for i in range(first, last):
            at = i % steps
            engine.train_epoch(population, train, [Noise(noise)], i // steps, steps=range(at, at + 1))
        return population

    k, end, last = steps + 2, steps + 7, steps + 14
    parent = plain(Population.from_modules([build_network(config, 10)]), 0, 0, k)
    children = [plain(parent, noise, k, end) for noise in (1, 2)]
    average = Population.averages([[(child, 0) for child in children]], [[0.5, 0.5]], "reset")
    further = [plain(average, 1000, end, last), *(plain(c, n, end, last) for n, c in enumerate(children, 1))]
    for name, expected in (("parent", [parent]), ("children", children), ("average", [average]), ("final", further)):
        stored = tensors(directory, name)
        for m, network in enumerate(expected):
            assert torch.equal(stored.weights_MP[m], network.weights_MP[0]), (name, m)
            assert torch.equal(stored.statistics_MQ[m], network.statistics_MQ[0]), (name, m)
            assert torch.equal(stored.momentum_MP[m], network.momentum_MP[0]), (name, m)
    by_stage = {row["stage"]: [r["iteration"] for r in rows if r["stage"] == row["stage"]] for row in rows}
    assert set(by_stage["interpolation"]) == {end}
    ends = [i for i in range(k + 1, end) if i % steps == 0]
    assert sorted(set(by_stage["children"])) == [*ends, end]
    assert sorted(set(by_stage["after"])) == [*(i for i in range(end + 1, last) if i % steps == 0), last]
    assert all(row["epoch"] == row["iteration"] / steps for row in rows)
    # Rows have the rate of the first step of their epoch, or of their part of it.
    begins = {"parent": 0, "children": k, "after": end}
    for row in rows:
        # A child trained on goes through the interpolation as if it were not there.
        if "learning_rate" in row and (row["stage"] != "after" or row["network"] == "average"):
            begun = max(begins[row["stage"]], (row["iteration"] - 1) // steps * steps)
            assert row["learning_rate"] == pytest.approx(0.05 * min(1, begun / 12)), row


def test_a_run_within_epochs_goes_on_from_files_to_the_bit(within, tmp_path):
    config, _, rows = within
    assert run(config, tmp_path, seconds=0.0, members=1, memory=0.0) == rows
