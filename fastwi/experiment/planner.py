"""From points to one tree of trajectories: shared epochs, each point's place among them, what stays of them.

A point is the protocol of the paper (its Figure 1): a parent trains for k epochs and is cloned, each child trains
for s epochs under its own noise, their weights are averaged, and the average is trained on.

Nothing here imports torch. All but averages over time is linear in the number of epochs and points.
"""

import functools
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.config.averaging import momentum_weights, outer_coefficients
from fastwi.config.schema import Config, ExperimentConfig, times_alone
from fastwi.config.sweep import RECOMPUTED, Point, SweepOptions, SweepSpec, in_precision, points, run_point
from fastwi.config.time import AnyTime, Time, iterations_of
from fastwi.data.card import read_card
from fastwi.engine.schedule import FurtherSchedule
from fastwi.errors import UserError
from fastwi.experiment.inputs import Inputs, inputs_key
from fastwi.experiment.keys import Namer, epoch_key
from fastwi.experiment.over_time import weights_over_time
from fastwi.experiment.places import OverTime, PointStates, Round
from fastwi.experiment.tree import MOVING, OWN, Average, Treatment, Tree
from fastwi.models.changes import Networks, networks_of

if TYPE_CHECKING:
    from fastwi.engine.precision import Choice

_LARGEST_COEFFICIENT = 2.0**26  # a float64 has 29 bits more than a float32: sums of such terms are right to the last
MOST_STATES = 5_000_000  # each takes about 0.4 KB, with its share of points and of what is planned for it


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep's points, the tree that they make, and each point's place in it.

    `auto`: what engine.precision: auto stood for in the points, or None. `networks`: the users' own.
    """

    spec: SweepSpec
    points: list[Point]
    tree: Tree
    places: list[PointStates]
    auto: "Choice | None"
    networks: Networks

    def inputs_of(self, config: Config) -> Inputs:
        """What a configuration was planned on."""
        return self.tree.inputs[inputs_key(config)]

    def contents(self) -> list[str]:
        """What decides the points beside their keys, each in a digest: what their files hold (`Inputs.digest`), and
        what `auto` was where it is one of several precisions.
        """
        digests = [inputs.digest for inputs in self.tree.inputs.values()]
        if self.auto and "engine.precision" in self.spec.axes:
            digests.append(f"engine.precision: auto is {self.auto.precision}")
        return sorted({hashlib.sha256(digest.encode()).hexdigest() for digest in digests})

    def kept(self, keep: str) -> set[int]:
        """The epochs whose states stay in the store under the choice `keep` of sweep.keep."""
        tree = self.tree
        kept = set(tree.epoch_nodes()) if keep in ("ends", "all") else set()
        if keep == "ends":
            kept.difference_update(tree.before)
            kept.difference_update(*(each.end_nodes for place in self.places for each in place.rounds[:-1]))
        if keep == "stops":
            for place in self.places:
                ends = (node for each in place.rounds for node in each.end_nodes)
                lasts = (place.clone_node, place.parent_node, place.after_node, *place.last_nodes)
                kept.update(filter(tree.is_epoch, (*lasts, *ends)))
        return kept


def plan_run(config: Config, store: Path, inputs: Inputs | None = None) -> PlannedSweep:
    """Plan a run as a sweep of one point, on a store of its own. `inputs`: where they were read already."""
    spec = SweepSpec(config, options=SweepOptions(store=str(store)))
    return plan_sweep(spec, [run_point(config)], None if inputs is None else lambda _: inputs)


def plan_sweep(
    spec: SweepSpec, some: Iterable[Point] | None = None, inputs_of: Callable[[Config], Inputs] | None = None
) -> PlannedSweep:
    """Plan `some` points of a sweep (default: all). `inputs_of` is `Inputs.of` the dataset's card by default.

    Raises UserError where a dataset is not there or is smaller than a batch, where two values of an axis are one
    time, and for a tree of more than `MOST_STATES` states.
    """
    cards = functools.cache(read_card)
    every, auto = list(points(spec) if some is None else some), None
    if any(point.config.engine.precision == "auto" for point in every):
        from fastwi.experiment.store.precision import precision_of_store  # imports torch

        auto = precision_of_store(Path(spec.options.store), spec.base.engine)
        every = in_precision(every, auto.precision)  # no worker decides for itself
    planner = _Planner(
        inputs_of or (lambda config: Inputs.of(cards(config.data.path), config)), RECOMPUTED in spec.options.measure
    )
    places = [planner.add(point) for point in every]
    _check_axes(spec, set(planner.tree.per_epoch))
    networks = networks_of(point.config.model.name for point in every)
    planned = PlannedSweep(spec, every, planner.tree, places, auto, networks)
    planned.tree.stops = planned.kept(spec.options.keep)
    return planned


class _RecomputedByEpoch(dict[int, Treatment]):
    """Recomputed statistics by epoch, made when they are looked up."""

    def __init__(self, namer: Namer, noise: int, images: int) -> None:
        super().__init__()
        self._at = functools.partial(namer.recomputed, noise, images)

    def __missing__(self, epoch: int) -> Treatment:
        return self.setdefault(epoch, self._at(epoch))


def _outer(experiment: ExperimentConfig) -> list[tuple[float, ...]]:
    """`outer_coefficients`. Raises UserError where they are so large that rounding would decide their sum."""
    found = outer_coefficients(experiment)
    if not all(abs(coefficient) <= _LARGEST_COEFFICIENT for coefficient in itertools.chain(*found)):
        raise UserError(
            f"experiment.outer_step: {experiment.outer_step:g} at experiment.outer_momentum = "
            f"{experiment.outer_momentum:g} makes the averages of {experiment.rounds} rounds differences of networks "
            f"times {_LARGEST_COEFFICIENT:.0e} or more, which rounding decides; lower one of these, or "
            "experiment.rounds"
        )
    return found


def _check_axes(spec: SweepSpec, lengths: Iterable[int]) -> None:
    """Raise UserError where two values of an axis are one time in epochs of one of the `lengths` (iterations)."""
    names = "experiment.k", "experiment.s", "experiment.after"
    axes = [path for path in names if path in spec.axes]
    for path, k, length in itertools.product(axes, spec.values("experiment.k"), lengths):
        seen = dict[int, AnyTime]()
        for time in spec.axes[path]:
            begun = iterations_of(k, length) if isinstance(time, Time) and time.less_k else 0
            same = seen.setdefault(iterations_of(time, length) - begun, time)
            if same != time:
                at = f" at experiment.k = {k}" * (path == "experiment.s")
                raise UserError(
                    f"axes.{path}: {same} and {time} are one time{at} where an epoch has {length} iterations; leave "
                    "one out, or make two sweeps of them"
                )


class _Planner:
    def __init__(self, inputs_of: Callable[[Config], Inputs], recomputed: bool) -> None:
        self.tree = Tree()
        self._inputs_of, self._recomputed = inputs_of, recomputed
        self._namers: dict[tuple[object, ...], Namer] = {}
        self._trajectories: dict[tuple[int, int, Namer, bool], array[int]] = {}
        # Many points share these.
        self._initial = functools.cache(Namer.initial)
        self._later = functools.cache(self._namer_later)
        self._treatments = functools.cache(self._new_treatments)
        self._recomputed_by = functools.cache(_RecomputedByEpoch)
        self._outer = functools.cache(_outer)
        self._same = functools.cache(lambda weights: weights)

    def add(self, point: Point) -> PointStates:
        """Put what `point` needs into the tree, where it is not there yet."""
        config, tree, namer = point.config, self.tree, self._namer(point.config)
        experiment, seeds = config.experiment, config.seeds
        k = iterations_of(experiment.k, namer.per_epoch)
        start = tree.add(self._initial(namer, seeds.init), config, per_epoch=namer.per_epoch)
        clone = self._train(start, k, seeds.parent_noise, config, namer)
        rounds = self._rounds(start, clone, config, namer)
        ends = lasts = rounds[-1].end_nodes
        average = rounds[-1].average_node
        end = tree.iterations[average]
        last = end + iterations_of(experiment.after, namer.per_epoch)
        times = times_alone(experiment)
        alone = k + (end - k) * times + (last - end) * (times > 0)
        parent = self._train(start, alone, seeds.parent_noise, config, namer)
        reset = experiment.child_momentum == "reset"
        if experiment.continue_children:
            later = self._later(namer, end, last, experiment.children_rate_factor)
            # At the same rates they are the children trained for longer, whose epochs nothing divides.
            starts = rounds[-1].start_nodes if later is namer else ends
            begun = zip(starts, seeds.child_noise, strict=True)
            lasts = tuple(
                [
                    self._train(node, last, noise, later.config, later, reset and node == clone)
                    for node, noise in begun
                ]
            )
        later = self._later(namer, end, last)
        after = self._train(average, last, seeds.average_noise, later.config, later)
        how = namer, seeds.statistics_noise, experiment.recompute_images
        recomputed = self._recomputed_by(*how) if RECOMPUTED in experiment.measure else {}
        ended = (node for each in rounds for node in each.end_nodes)
        for node in (parent, *ended, *lasts, after) if RECOMPUTED in experiment.measure else ():
            self._probe_path(node, recomputed, config)
        for each in rounds:
            networks = [(node, each.treatments) for node in (each.average_node, *each.end_nodes)]
            for node, treatments in (*networks, *each.alone):
                for name, treatment in treatments.items():
                    if name != OWN or not tree.is_epoch(node):
                        tree.add_probe(node, treatment, config)
        over_time = tuple(self._over_time(config, namer, parent, rounds, lasts, after))
        for of_time in over_time:
            for treatment in of_time.treatments.values():
                tree.add_probe(of_time.node, treatment, config)
        return PointStates(tree, clone, parent, rounds, lasts, after, recomputed, over_time)

    def _over_time(
        self, config: Config, namer: Namer, parent: int, rounds: Sequence[Round], lasts: Sequence[int], after: int
    ) -> Iterator[OverTime]:
        """The averages over time of the networks of a point, in the order of epochs for each network."""
        tree, any_at_all = self.tree, config.trajectory.averages or config.optimizer.ema_decay
        chosen = config.trajectory.networks if any_at_all else ()
        networks = [("parent", -1, 0, 0, parent)] if "parent" in chosen else []
        for number, each in enumerate(rounds) if "child" in chosen else ():
            ends = lasts if each is rounds[-1] else each.end_nodes
            networks += [("child", child, number, each.first, last) for child, last in enumerate(ends)]
        networks += [("average", -1, len(rounds) - 1, 0, after)] if "average" in chosen else []
        again = self._recomputed or RECOMPUTED in config.experiment.measure
        how = namer, config.seeds.statistics_noise, config.experiment.recompute_images
        for network, child, number, first, last in networks:
            path, node = [], last
            while tree.is_epoch(node):
                if tree.iterations[node] % namer.per_epoch == 0:  # no part of an epoch
                    path.append(node)
                node = tree.before[node]
            path.reverse()
            if config.optimizer.ema_decay:
                for node in (node for node in path if tree.iterations[node] > first):
                    treatments = self._treatments(*how, tree.epochs[node], again).values()
                    moved = {MOVING + t.name: replace(t, name=MOVING + t.name, moving=True) for t in treatments}
                    yield OverTime("ema_iteration", network, child, number, node, moved)
            for count, node in enumerate(path, 1):
                epoch, at = tree.epochs[node], tree.iterations[node]
                for name, weights in weights_over_time(config.trajectory, epoch, count) if at > first else ():
                    states, none = tuple(path[count - len(weights) : count]), (0.0,) * len(weights)
                    key = namer.over_time(name, [tree.keys[state] for state in states], weights)
                    average = Average(states, *map(self._same, (weights, weights, none)))
                    made = tree.add(key, config, at, average=average, per_epoch=namer.per_epoch)
                    yield OverTime(name, network, child, number, made, self._treatments(*how, epoch, again))

    def _rounds(self, start: int, clone: int, config: Config, namer: Namer) -> tuple[Round, ...]:
        """Clone, train, average, as often as it is asked for. Averages are sums of epochs and `clone` alone."""
        experiment, seeds, noises = config.experiment, config.seeds, config.seeds.child_noise
        first, starts, rounds = self.tree.iterations[clone], [clone] * len(noises), list[Round]()
        k, many, per_epoch = first, times_alone(experiment), namer.per_epoch
        mean = experiment.weights or (1 / len(noises),) * len(noises)
        again = self._recomputed or RECOMPUTED in experiment.measure

        def measured(node: int) -> Mapping[str, Treatment]:
            how = seeds.statistics_noise, experiment.recompute_images, self.tree.epochs[node]
            return self._treatments(namer, *how, again)

        for at_clone, *of_means in self._outer(experiment):
            end = iterations_of(experiment.s, per_epoch)
            if not (isinstance(experiment.s, Time) and experiment.s.less_k):
                end += first
            if end < first:
                raise UserError(
                    f"experiment.s: {experiment.s} is less than nothing at experiment.k = {experiment.k}, where an "
                    f"epoch has {per_epoch} iterations; train to a later end"
                )
            reset = experiment.child_momentum == "reset" and not rounds
            trained = zip(starts, noises, strict=True)
            ends = tuple([self._train(start, end, noise, config, namer, reset) for start, noise in trained])
            means = [ends, *(each.end_nodes for each in reversed(rounds))]
            terms = [
                (node, coefficient * weight)
                for coefficient, nodes in zip(reversed(of_means), means, strict=True)
                for node, weight in zip(nodes, mean, strict=True)
                if coefficient or nodes is ends
            ]
            terms += [(clone, at_clone)] if at_clone else []
            average = self._average(terms, mean, end, config, namer)
            times = [k + n * (end - k) for n in sorted({1, many} if many else ())]
            alone = [self._train(start, time, seeds.parent_noise, config, namer) for time in times]
            of_alone = tuple((node, measured(node)) for node in alone)
            rounds.append(Round(first, tuple(starts), ends, average, measured(average), of_alone))
            first = end
            if len(rounds) < experiment.rounds:
                starts = [self._average(terms, mean, end, config, namer, child) for child in range(len(noises))]
        return tuple(rounds)

    def _average(
        self,
        terms: Sequence[tuple[int, float]],
        mean: tuple[float, ...],
        iteration: int,
        config: Config,
        namer: Namer,
        child: int | None = None,
    ) -> int:
        """The node of a sum of `terms`, nodes with weights, of which the children averaged are the first.

        Statistics and momentum are of these alone, by the weights `mean`. child: the one of them that starts from
        there, pulled towards the average; the average itself where it is pulled all the way.
        """
        experiment, tree = config.experiment, self.tree
        pull, own = 1.0, None
        if child is not None:
            pull, own = experiment.pull, child if experiment.round_momentum == "own" else None
        nodes, weights = zip(*terms, strict=True)
        all_means = mean + (0.0,) * (len(nodes) - len(mean))
        momentum = momentum_weights(experiment.momentum, all_means)
        if own is not None:
            momentum = tuple(float(i == own) for i in range(len(nodes)))
        sums = [tuple(pull * w + (1 - pull) * (i == child) for i, w in enumerate(s)) for s in (weights, all_means)]
        average = Average(nodes, *map(self._same, (*sums, momentum)))
        key = namer.average([tree.keys[node] for node in nodes], average, own, config)
        return tree.add(key, config, iteration, average=average, per_epoch=namer.per_epoch)

    def _train(self, start: int, last: int, noise: int, config: Config, namer: Namer, reset: bool = False) -> int:
        """The node after iteration `last` of the trajectory from `start`; extends the tree.

        reset: with zero momentum.
        """
        tree, per_epoch, path = self.tree, namer.per_epoch, array("i", [start])
        reset = reset and tree.is_epoch(start) and config.optimizer.momentum > 0  # else it is zero
        if start not in tree.averages:  # which are hardly ever trained on in two points
            path = self._trajectories.setdefault((start, noise, namer, reset), path)
        first = tree.iterations[start] // per_epoch  # path[i] is at the end of epoch first + i
        whole = last // per_epoch - first
        planned = len(tree) + whole + 1 - len(path)
        if planned > MOST_STATES:
            raise UserError(
                f"sweep: its tree has {planned:,} epochs and averages or more (at experiment.k = "
                f"{config.experiment.k}, s = {config.experiment.s}), and {MOST_STATES:,} is the most that can be "
                "planned; make k, s, after, sweep.parents or sweep.children smaller"
            )
        while len(path) <= whole:
            ends = (first + len(path)) * per_epoch
            path.append(self._epoch(path[-1], ends, noise, config, namer, reset and len(path) == 1))
        node = path[whole]
        if tree.iterations[node] == last:
            return node
        return self._epoch(node, last, noise, config, namer, reset and not whole)

    def _epoch(self, before: int, last: int, noise: int, config: Config, namer: Namer, reset: bool) -> int:
        """The node after iteration `last`, within or at the end of the epoch in which the node `before` is."""
        tree = self.tree
        alike = namer.alike(tree.iterations[before], last, reset)
        key = epoch_key(tree.keys[before], alike, noise)
        node = tree.add(key, config, last, before, noise, alike, per_epoch=namer.per_epoch)
        if reset:
            tree.resets.add(node)
        return node

    def _namer(self, config: Config) -> Namer:
        sections = (config.model, config.data, config.engine, config.augment, config.optimizer, config.schedule)
        namer = self._namers.get(sections)
        if namer is None:
            inputs, key = self.tree.inputs, inputs_key(config)
            if key not in inputs:
                inputs[key] = self._inputs_of(config)
            namer = self._namers[sections] = Namer(config, inputs[key])
        return namer

    def _probe_path(self, node: int, treatments: Mapping[int, Treatment], config: Config) -> None:
        """Have every epoch up to `node` measured, each by the treatment of its epoch."""
        tree, new = self.tree, True
        while new and tree.is_epoch(node):  # where one is there already, so are those before it
            new, node = tree.add_probe(node, treatments[tree.epochs[node]], config), tree.before[node]

    def _new_treatments(
        self, namer: Namer, noise: int, images: int, epoch: int, again: bool
    ) -> Mapping[str, Treatment]:
        recomputed = [namer.recomputed(noise, images, epoch)] if again else []
        return {treatment.name: treatment for treatment in (Treatment(OWN, epoch, 0, 0), *recomputed)}

    def _namer_later(self, namer: Namer, first: int, last: int, factor: float = 1.0) -> Namer:
        """Of networks that are trained on from the interpolation, at iteration `first`, to iteration `last`."""
        optimizer, schedule = namer.config.optimizer, namer.config.schedule
        if schedule.at_average != "keep":
            schedule = FurtherSchedule(**vars(schedule), first=first, last=last)
        optimizer = replace(optimizer, learning_rate=optimizer.learning_rate * factor)
        return self._namer(replace(namer.config, optimizer=optimizer, schedule=schedule))
