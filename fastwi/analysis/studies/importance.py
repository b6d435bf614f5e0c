"""Example importance (paper, Figure 5): on which training examples the average gains, and where it loses later.

The sweep's training images are split into equal parts by EL2N score (Paul et al. 2021, definition 2.3), the
expectation over the sweep's parents at one epoch; the paper's is epoch 10. Split 1 has the lowest scores (easy), the
last the highest (hard). Every network is measured on all splits in one pass over images without augmentation.

A second score, forgetting events (Toneva et al. 2019, section 3) along the parents' epochs, stands beside EL2N where
each parent's state after every epoch is stored.

Shapes: N images; S splits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from fastwi.analysis.columns import axis_types, pair_types
from fastwi.analysis.el2n import el2n_scores
from fastwi.analysis.forgetting import forgetting_events
from fastwi.analysis.splits import equal_splits, split_scores
from fastwi.analysis.studies.chosen import (
    STUDY_COLUMNS,
    ChosenPair,
    all_pairs,
    by_variant,
    chosen_pairs,
    part_of,
    recomputed,
)
from fastwi.analysis.studies.opened import OpenedSweep
from fastwi.analysis.studies.pairs import Tell
from fastwi.config.analysis import AnalysisOptions
from fastwi.config.sweep import RECOMPUTED
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN

_TOGETHER = 8  # networks in memory at one time

_SCORE_TYPES: dict[str, Any] = {
    "example": polars.Int64, "label": polars.Int64, "el2n": polars.Float64, "split": polars.Int64,
    "forgetting_events": polars.Float64, "score_epoch": polars.Int64, "n_parents": polars.Int64,
}  # fmt: skip
_SPLIT_TYPES: dict[str, Any] = {
    "network": polars.String, "child": polars.Int64, "stage": polars.String, "epoch": polars.Int64,
    "batch_norm": polars.String, "split": polars.Int64, "images": polars.Int64,
    "train_accuracy_%": polars.Float64, "train_loss_nats": polars.Float64,
}  # fmt: skip
_GAIN_TYPES: dict[str, Any] = {
    "batch_norm": polars.String, "split": polars.Int64, "gain_mean_points": polars.Float64,
    "gain_best_points": polars.Float64, "gain_mean_loss_nats": polars.Float64,
}  # fmt: skip
_CHANGE_TYPES: dict[str, Any] = {
    "epochs_after": polars.Int64, "split": polars.Int64, "change_points": polars.Float64,
    "change_loss_nats": polars.Float64,
}  # fmt: skip
_MISSING_TYPES: dict[str, Any] = {
    "network": polars.String, "epochs": polars.Int64, "epochs_not_stored": polars.Int64,
}  # fmt: skip

COLUMNS = STUDY_COLUMNS | {
    "example": ("", "place of the image among the sweep's training images, from 0"),
    "label": ("", "its class"),
    "el2n": ("1", "EL2N score, the mean over parents: 0 to the square root of 2"),
    "split": ("", "which of the equal parts by ascending EL2N: 1 is the easiest"),
    "forgetting_events": ("events", "forgetting events along the parents' epochs, the mean over parents"),
    "score_epoch": ("epochs", "epoch of the parents' states that gave the score"),
    "n_parents": ("", "parents that the score is the mean over"),
    "network": ("", "parent, child or average"),
    "child": ("", "number of the child, from 1 within its parent and k"),
    "stage": ("", "parent, children, interpolation or after"),
    "epoch": ("epochs", "epochs done since initialisation"),
    "images": ("images", "training images in the split"),
    "train_accuracy_%": ("%", "accuracy on the split's images, without augmentation"),
    "train_loss_nats": ("nats", "mean cross-entropy on them; null where not finite"),
    "gain_mean_points": ("points", "accuracy of the average at interpolation less the children's mean"),
    "gain_best_points": ("points", "that less the best child's on this split"),
    "gain_mean_loss_nats": ("nats", "loss of the average at interpolation less the children's mean"),
    "epochs_after": ("epochs", "epochs that the average trained on"),
    "change_points": ("points", "accuracy of the average trained on less at interpolation, own statistics"),
    "change_loss_nats": ("nats", "loss likewise"),
    "epochs": ("epochs", "states of such networks of the pair beside the one at interpolation"),
    "epochs_not_stored": ("epochs", "how many of them the store has not, so that they were not measured"),
}
"""Unit and meaning of the columns of all frames."""


@dataclass(frozen=True)
class _Network:
    """A network of a pair: what it is in the table, its state, and the epoch of the draws that its batch-norm
    statistics are recomputed on (None: its own)."""

    name: str
    child: int | None
    stage: str
    epoch: int
    state: str
    draws: int | None

    @property
    def measured(self) -> tuple[str, int | None]:
        """What one measurement of it is filed under."""
        return self.state, self.draws


_Scores = dict[tuple[str, int | None], tuple[NDArray[np.float64], NDArray[np.float64]]]


def importance(opened: OpenedSweep, options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Accuracy (%) and loss (nats) of parent, children, average and continued average on each split.

    Frames; each begins with the axes beside k and s, and all but the first go on with k, s, alpha, parent_seed, pair:

    - scores: one row a training image, `example` its place among the sweep's training images: el2n, split (from 1),
      and forgetting_events, the mean over parents (one that a parent never learned counts as many events as there
      are measurements; null where states are missing); n_parents is the n of both, without parents that
      diverged or are not trained to the end.
    - splits: one row a network, epoch, split and treatment of batch norm. Recomputed statistics are those of the
      interpolation epoch, for parent, children and average alike.
    - split_gains: the average less the children's mean and best child on each split, percentage points (of loss:
      nats, only over the mean).
    - split_changes: the average after each further epoch less the average at interpolation, own statistics.
    - missing: states between the sweep's stops that are not stored and so not in `splits`.

    Raises UserError where no epoch has all parents' states, or a state at k, k + s or a pair's end is missing.
    """
    pairs = chosen_pairs(opened, options)
    plans = [_plan(opened, options, variant, found) for variant, found in by_variant(pairs).items()]
    done, total = 0, sum(plan.passes for plan in plans)

    def passed(networks: int) -> None:
        nonlocal done
        done += networks
        tell(done, total)

    spec = opened.planned.spec
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("scores", "splits", "split_gains", "split_changes", "missing")
    }
    for plan in plans:
        splits_N = _score(opened, options, plan, rows["scores"], passed)
        images_S = np.bincount(splits_N)
        found = _measure(opened, plan, splits_N, passed)
        for pair, networks in plan.networks:
            rows["splits"] += _split_rows(pair, networks, found, images_S)
            rows["split_gains"] += _gain_rows(pair, networks, found)
            rows["split_changes"] += _change_rows(pair, networks, found)
            rows["missing"] += _missing_rows(opened, pair)
    types = pair_types(spec)
    return {
        "scores": polars.DataFrame(rows["scores"], schema=axis_types(spec) | _SCORE_TYPES),
        "splits": polars.DataFrame(rows["splits"], schema=types | _SPLIT_TYPES),
        "split_gains": polars.DataFrame(rows["split_gains"], schema=types | _GAIN_TYPES),
        "split_changes": polars.DataFrame(rows["split_changes"], schema=types | _CHANGE_TYPES),
        "missing": polars.DataFrame(rows["missing"], schema=types | _MISSING_TYPES),
    }


@dataclass(frozen=True, eq=False)
class _Plan:
    """One combination of other axes: parents' states that give scores, and networks to measure."""

    variant: tuple[tuple[str, Any], ...]
    epoch: int  # of the scores
    parents: tuple[str, ...]
    along: tuple[tuple[str, ...], ...]  # the parents' states after each epoch, for forgetting; empty: not stored
    networks: list[tuple[ChosenPair, list[_Network]]]
    images: ResidentDataset
    positions: list[int]

    @property
    def wanted(self) -> list[tuple[str, int | None]]:
        """Each measurement once: children of one parent at several s share states."""
        return list(dict.fromkeys(network.measured for _, networks in self.networks for network in networks))

    @property
    def passes(self) -> int:
        """Networks that are passed over the training images."""
        return len(self.parents) + sum(map(len, self.along)) + len(self.wanted)


def _plan(
    opened: OpenedSweep, options: AnalysisOptions, variant: tuple[tuple[str, Any], ...], pairs: list[ChosenPair]
) -> _Plan:
    paths: dict[int, tuple[str, ...]] = {}
    for pair in all_pairs(opened):
        if pair.variant == variant and len(pair.place.parent) >= len(paths.get(pair.point.parent, ())):
            paths[pair.point.parent] = pair.place.parent
    paths = {parent: path for parent, path in paths.items() if _is_sound(opened, path)}
    reached = min(map(len, paths.values()), default=0)
    epoch = options.score_epoch
    if epoch > reached:
        raise UserError(
            f"analysis.score_epoch: {epoch}, but the sweep's parents end at epoch {reached}; give that or less, "
            "0 for the last one, or sweep a larger experiment.k"
        )
    if not epoch:
        stored = (e for e in range(reached, 0, -1) if opened.has([path[e - 1] for path in paths.values()]))
        epoch = next(stored, 0)
    if not epoch:
        raise UserError(
            "analysis.score_epoch: no epoch has the states of all parents; run the sweep with sweep.keep: stops, and "
            "a k above 0"
        )
    along = [tuple(path[e] for path in paths.values()) for e in range(epoch)]
    whole = epoch > 1 and all(opened.has(states) for states in along)
    images, positions = part_of(
        opened.resident_splits(pairs[0].config)[0], options.train_images, "analysis.train_images"
    )
    again, lost = RECOMPUTED in options.treatments, opened.lost()
    return _Plan(
        variant,
        epoch,
        tuple(path[epoch - 1] for path in paths.values()),
        tuple(along) if whole else (),
        [(pair, list(_networks(opened, pair, again, lost))) for pair in pairs],
        images,
        positions,
    )


def _is_sound(opened: OpenedSweep, path: tuple[str, ...]) -> bool:
    """Whether a parent is trained to its end and has not diverged: n counts those only."""
    found = [opened.measured.get((state, OWN)) for state in path]
    return all(m is not None and not m.diverged for m in found)


def _networks(opened: OpenedSweep, pair: ChosenPair, again: bool, lost: set[str]) -> Iterable[_Network]:
    """The pair's networks in order, without those that diverged; of those between stops, the ones that are stored."""
    place, k, end = pair.place, pair.k, pair.k + pair.s
    clone = place.clone
    treatments: tuple[int | None, ...] = (None, end) if again else (None,)
    for draws in treatments:
        yield _Network("parent", None, "parent", k, clone, draws)
    for number, path in zip(pair.numbers, place.children, strict=True):
        for epoch, state in enumerate(path, k + 1):
            if epoch != end and state not in lost and opened.has([state]):
                stage = "children" if epoch < end else "after"
                yield _Network("child", number, stage, epoch, state, None)
    for draws in treatments:
        for number, state in zip(pair.numbers, place.ends, strict=True):
            yield _Network("child", number, "interpolation", end, state, draws)
        yield _Network("average", None, "interpolation", end, place.average, draws)
    for epoch, state in enumerate(place.after, end + 1):
        if state not in lost and (opened.has([state]) or epoch == end + len(place.after)):
            yield _Network("average", None, "after", epoch, state, None)


def _score(
    opened: OpenedSweep,
    options: AnalysisOptions,
    plan: _Plan,
    rows: list[dict[str, Any]],
    passed: Callable[[int], None],
) -> NDArray[np.int64]:
    """Score and split the images, and add their rows; returns the split of each, from 0."""
    engine = opened.resources.engine(plan.networks[0][0].config)

    def one_by_one() -> Iterable[Any]:
        for state in plan.parents:
            yield opened.states([state])
            passed(1)

    def epoch_by_epoch() -> Iterable[Any]:
        for states in plan.along:
            yield opened.states(states)
            passed(len(states))

    el2n_N = el2n_scores(engine, one_by_one(), plan.images)
    splits_N = equal_splits(el2n_N, options.splits)
    forgotten: Sequence[float | None] = [None] * len(el2n_N)
    if plan.along:
        forgetting = forgetting_events(engine, epoch_by_epoch(), plan.images)
        scores_N = forgetting.scores(float(forgetting.measurements)) / len(plan.parents)
        forgotten = scores_N.tolist()
    rows += [
        {
            **dict(plan.variant), "example": position, "label": label, "el2n": el2n, "split": split + 1,
            "forgetting_events": events, "score_epoch": plan.epoch, "n_parents": len(plan.parents),
        }
        for position, label, el2n, split, events in zip(
            plan.positions, plan.images.labels_N.tolist(), el2n_N.tolist(), splits_N.tolist(), forgotten, strict=True
        )
    ]  # fmt: skip
    return splits_N


def _measure(opened: OpenedSweep, plan: _Plan, splits_N: NDArray[np.int64], passed: Callable[[int], None]) -> _Scores:
    """Accuracy (%) and loss (nats) [S] of each wanted network, some networks at a time."""
    config = plan.networks[0][0].config
    engine = opened.resources.engine(config)
    found: _Scores = {}
    by_draws: dict[int | None, list[str]] = {}
    for state, draws in plan.wanted:
        by_draws.setdefault(draws, []).append(state)
    for draws, states in by_draws.items():
        for first in range(0, len(states), _TOGETHER):
            chosen = states[first : first + _TOGETHER]
            population = opened.states(chosen)
            if draws is not None:
                population = recomputed(opened, population, config, draws)
            scores = split_scores(engine, population, plan.images, splits_N)
            for m, state in enumerate(chosen):
                found[state, draws] = scores.accuracy_MS[m], scores.loss_MS[m]
            passed(len(chosen))
    return found


def _split_rows(
    pair: ChosenPair, networks: list[_Network], found: _Scores, images_S: NDArray[np.int64]
) -> list[dict[str, Any]]:
    return [
        {
            **pair.columns(), "network": network.name, "child": network.child, "stage": network.stage,
            "epoch": network.epoch, "batch_norm": _treatment(network), "split": split + 1,
            "images": int(images_S[split]), "train_accuracy_%": float(found[network.measured][0][split]),
            "train_loss_nats": _finite(found[network.measured][1][split]),
        }
        for network in networks
        for split in range(len(images_S))
    ]  # fmt: skip


def _gain_rows(pair: ChosenPair, networks: list[_Network], found: _Scores) -> list[dict[str, Any]]:
    rows = []
    for treatment in (OWN, RECOMPUTED):
        here = [n for n in networks if n.stage == "interpolation" and _treatment(n) == treatment]
        if not here:
            continue
        (accuracy_S, loss_S) = next(found[n.measured] for n in here if n.name == "average")
        children = [found[n.measured] for n in here if n.name == "child"]
        accuracy_CS, loss_CS = (np.array([child[i] for child in children]) for i in range(2))
        for split in range(len(accuracy_S)):
            rows.append({
                **pair.columns(), "batch_norm": treatment, "split": split + 1,
                "gain_mean_points": float(accuracy_S[split] - accuracy_CS[:, split].mean()),
                "gain_best_points": float(accuracy_S[split] - accuracy_CS[:, split].max()),
                "gain_mean_loss_nats": _finite(loss_S[split] - loss_CS[:, split].mean()),
            })  # fmt: skip
    return rows


def _change_rows(pair: ChosenPair, networks: list[_Network], found: _Scores) -> list[dict[str, Any]]:
    at, loss_at = found[pair.place.average, None]
    return [
        {
            **pair.columns(), "epochs_after": network.epoch - pair.k - pair.s, "split": split + 1,
            "change_points": float(found[network.measured][0][split] - at[split]),
            "change_loss_nats": _finite(found[network.measured][1][split] - loss_at[split]),
        }
        for network in networks
        if network.name == "average" and network.stage == "after"
        for split in range(len(at))
    ]  # fmt: skip


def _missing_rows(opened: OpenedSweep, pair: ChosenPair) -> list[dict[str, Any]]:
    rows = []
    for name, paths in (("child", pair.place.children), ("average", (pair.place.after,))):
        states = [state for path in paths for state in path]
        lacking = sum(not opened.has([state]) for state in states)
        if lacking:
            rows.append({**pair.columns(), "network": name, "epochs": len(states), "epochs_not_stored": lacking})
    return rows


def _treatment(network: _Network) -> str:
    return OWN if network.draws is None else RECOMPUTED


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
