"""`fastwi.load_network`: any network that a run or a sweep keeps, as an nn.Module."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastwi.config.layers import read_text
from fastwi.config.read import config_from_yaml, sweep_from_yaml
from fastwi.config.schema import Config
from fastwi.config.sweep import child_tuples, variant_of
from fastwi.config.time import AnyTime, Time, iterations_of, read_time, time_at
from fastwi.config.values import show
from fastwi.errors import ConfigError, UserError
from fastwi.experiment.planner import PlannedSweep, plan_run, plan_sweep
from fastwi.experiment.resident import ResidentStates
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import Store
from fastwi.models.changes import network_change
from fastwi.models.names import is_own
from fastwi.python.entry import undisturbed
from fastwi.report.results import Results
from fastwi.report.run_directory import RunDirectory
from fastwi.sealed import MANIFEST

WHICH = ("parent", "child", "average")
_MOST_LISTED = 20


def load_network(
    results: Results | str | os.PathLike[str],
    parent: int | None = None,
    child: int | None = None,
    k: int | str | None = None,
    s: int | str | None = None,
    *,
    which: str = "child",
    pair: int | None = None,
    alpha: float | None = None,
    after: int | str = 0,
    round: int | None = None,
    axes: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network of a run or a sweep, on the CPU and in evaluation mode. Nothing is trained.

    What is left out is taken where there is only one of it. The dataset and a network of the user's own must be as
    they were; relative paths are searched for from the working directory, as when the run began.

    Args:
        results: what `fastwi.run` or `fastwi.sweep` gave, or the directory of a run or of a sweep's results.
        parent: its initialisation seed.
        child: number of the child, from 1; of a sweep from 1 within its parent.
        k, s: epochs that the parent trained before it was cloned, or a time such as "500it"; that the child trained.
        which: "child" (after s epochs), "parent" (after k epochs), or "average" (of children after s epochs, with
            their batch-norm statistics averaged).
        pair: of an average, or of a child from round 2 on: which tuple of children, from 0, as in a sweep's frames.
        alpha: likewise: the average's place on the line A -> B.
        after: of an average, or of a child where children are trained on: epochs, or a time, after the interpolation.
        round: of an average or a child, where there are several rounds: which, from 1; a child's s counts from it.
            From round 2 on a child starts from its own tuple's average, so that pair and alpha name it too, and s
            where there are several: the network is then the one after all s epochs.
        axes: values of a sweep's further axes, {"optimizer.learning_rate": 0.1}.

    Returns:
        A module from images [N, 3, H, W], normalised by the channel means and deviations of the dataset's card.json,
        to logits [N, classes].

    Raises:
        UserError: in one line, for what there is not or is not kept, with what there is.
    """
    if which not in WHICH:
        raise UserError(f"which: {show(which)} is not a choice; valid: {', '.join(WHICH)}")
    given = {"parent": parent, "k": k, "s": s, "child": child, "pair": pair, "alpha": alpha, "after": after or None}
    given["round"] = round
    for name in axes or {}:
        if name in given:
            raise UserError(f"axes: {name} is an argument of load_network itself; give it as {name}=")
    with undisturbed():
        directory = Path(results.directory if isinstance(results, Results) else results)
        return _load(directory, which, {**given, **(axes or {})})


def _load(directory: Path, which: str, given: dict[str, Any]) -> nn.Module:
    planned = _planned(directory)
    # The last place of a trajectory is counted in epochs: those before it may be kept too.
    counted = "k" if which == "parent" else "s" if which == "child" and not given["after"] else "after"
    for name in ("k", "s", "after"):  # as configurations spell them; what is no time is not there
        with contextlib.suppress(ValueError):
            given[name] = read_time(given[name], "epochs")
    found = list(_networks(planned, which, counted))
    there = max((network.about for network in found), key=len)  # from round 2 on a child has more
    for name, value in given.items():
        if value is not None and name not in (*there, counted):
            raise UserError(f"{name}: is not one of the arguments of {which} networks: {', '.join(there)}")
    for name in there:
        value = given.get(name)
        # Children of a later round with another s have another start: they are not on one trajectory.
        apart = "pair" in found[0].about and len({network.about.get(name) for network in found}) > 1
        if name != counted or value is None or apart:
            found = _chosen(found, name, tuple(value) if isinstance(value, list) else value)
    tree, first = planned.tree, found[0]
    nodes: dict[AnyTime, int] = {
        time_at(tree.iterations[node] - network.begun, tree.per_epoch[node]): node
        for network in found
        for node in tree.path(network.last, network.begun - 1)  # from where it begins
    }
    wanted = first.about.get(counted, 0) if given[counted] is None else given[counted]
    if isinstance(wanted, (int, Time)):
        per_epoch = tree.per_epoch[first.last]
        to_global_end = counted == "s" and isinstance(wanted, Time) and wanted.less_k
        wanted = time_at(iterations_of(wanted, per_epoch) - to_global_end * first.begun, per_epoch)
    if wanted not in nodes:
        raise UserError(f"{counted}: there is no {show(wanted)}; there are {_listed(nodes)}")
    return _module(directory, planned, nodes, wanted, f"{which} at {counted}")


class _Network(NamedTuple):
    """The counted part of a network's trajectory: what distinguishes it, its last node, the iterations before it."""

    about: dict[str, Any]
    last: int
    begun: int


def _networks(planned: PlannedSweep, which: str, counted: str) -> Iterator[_Network]:
    """The parents, children or averages of all points."""
    tuples, done = child_tuples(planned.spec), planned.tree.iterations
    for point, place in zip(planned.points, planned.places, strict=True):
        e = point.config.experiment
        about = variant_of(planned.spec, point) | {"parent": point.parent, "k": e.k}
        if which == "parent":
            yield _Network(about, place.clone_node, 0)
            continue
        for at, each in enumerate(place.rounds, 1):
            ends, end = each is place.rounds[-1], done[each.average_node]
            here = about | {"round": at, "s": e.s}
            start = {"pair": point.tuple_index, "alpha": point.alpha}
            if which == "average":
                here |= start
                yield _Network(here, place.after_node if ends else each.average_node, end)
                continue
            # A run's children are one tuple, and any sweep's first tuple has its first children.
            numbers = tuples[point.tuple_index] if point.tuple_index else range(1, e.children + 1)
            lasts, begun = (each.end_nodes, each.first) if counted == "s" else (place.last_nodes, end)
            for number, last in zip(numbers, lasts if counted == "s" or ends else (), strict=False):
                yield _Network(here | {"child": number} | (start if at > 1 else {}), last, begun)


def _chosen(networks: list[_Network], name: str, given: Any) -> list[_Network]:
    """Those of `networks` of which `name` is `given`; all where nothing is given and they have one value."""
    there = list(dict.fromkeys(network.about[name] for network in networks if name in network.about))
    if given is None and len(there) <= 1:
        return networks
    if given not in there:
        what = "give one" if given is None else f"there is no {show(given)}"
        raise UserError(f"{name}: {what}; there are {_listed(there)}")
    return [network for network in networks if network.about[name] == given]


def _planned(directory: Path) -> PlannedSweep:
    """The run or sweep of which `directory` has the results, planned for the CPU."""
    run = RunDirectory(directory)
    path = run.config if run.config.exists() else directory / "sweep.yaml"
    try:
        text = read_text(path)
    except ConfigError as error:
        raise UserError(
            f"{directory}: no results of a run (config.yaml) or of a sweep (sweep.yaml): {error}"
        ) from None
    if path == run.config:
        config = _on_cpu(config_from_yaml(text, str(path)))
        planned = _found(lambda: plan_run(config, run.store))
        run.check(planned, f"bring back what it was made of, or {_from_there()}")
        return planned
    spec = sweep_from_yaml(text, str(path), directory)
    planned = _found(lambda: plan_sweep(replace(spec, base=_on_cpu(spec.base))))
    change = network_change(directory / MANIFEST, planned.networks)
    if change is not None:
        raise UserError(f"{directory}: {change}; bring the source back, or run the sweep again")
    return planned


def _found(plan: Callable[[], PlannedSweep]) -> PlannedSweep:
    """What `plan` gives. Raises UserError where dataset, weights or a network of the user's own are not found."""
    try:
        planned = plan()
    except UserError as error:
        raise type(error)(f"{error}; or {_from_there()}") from None
    for name in {point.config.model.name for point in planned.points}:
        if is_own(name) and name not in planned.networks:
            raise UserError(f"model.name: {show(name)} is not found; bring it back, or {_from_there()}")
    return planned


def _from_there() -> str:
    """What else helps where a file that a configuration names is not the one that it was."""
    return f"load networks from the directory that the run began in: paths are relative to it, now {Path.cwd()}"


def _on_cpu(config: Config) -> Config:
    return replace(config, engine=replace(config.engine, device="cpu"))


def _module(
    directory: Path, planned: PlannedSweep, nodes: Mapping[AnyTime, int], wanted: Any, what: str
) -> nn.Module:
    """The network `wanted` of `nodes`, read from the store. Raises UserError where the store does not have it."""
    tree = planned.tree
    with Store.open(planned.spec.options.store, create=False) as store:
        files = store.state_files({tree.keys[source] for node in nodes.values() for source in tree.sources(node)})
    kept = [n for n, node in nodes.items() if all(tree.keys[source] in files for source in tree.sources(node))]
    if wanted not in kept:
        there = f"kept are {_listed(kept)}" if kept else "none is; run it again"
        raise UserError(f"{directory}: the {what} = {wanted} is not kept; {there}")
    node = nodes[wanted]
    config = tree.configs[node]
    resources = Resources(tree)
    states = ResidentStates(tree, Path(planned.spec.options.store), resources, 0)
    population = states.gather([node], files, trains=False)
    network = resources.network(config)
    population.write_to(0, network)
    return network.eval()


def _listed(values: Iterable[Any]) -> str:
    shown = [show(value) for value in itertools.islice(values, _MOST_LISTED + 1)]
    return ", ".join(shown[:_MOST_LISTED]) + (", ..." if len(shown) > _MOST_LISTED else "") or "none"
