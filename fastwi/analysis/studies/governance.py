"""What governs the gain: each pair's gain beside what it might hang on, and their rank correlations.

The paper's claims 3 and 4: two quantities govern the gain (k, s, the learning rate and the children's distance are
candidates), and it is tied to linear mode connectivity (the barrier of Frankle et al. 2020, section 2). Correlation
shows what goes along with the gain, not what causes it: over all pairs every quantity moves with k and s. So each
correlation is also given within cells, of ranks after the mean of each cell was subtracted.

A barrier and a gain are of one line: with 1/2 among its places, the error barrier on the same images is at least the
loss of accuracy there, minus the gain over the children's mean. Part of their correlation is of that making.

Shapes: C children, N images, K classes.
"""

import itertools
import math
from typing import Any

import numpy as np
import polars
import torch
from torch import Tensor

from fastwi.analysis.barrier import barrier_between
from fastwi.analysis.columns import pair_types
from fastwi.analysis.distance import function_distances, weight_distances
from fastwi.analysis.evaluator import AVERAGED, RECOMPUTED, Evaluator, Recomputation
from fastwi.analysis.statistics import Estimate, spearman
from fastwi.analysis.studies.chosen import STUDY_COLUMNS, ChosenPair, chosen_pairs, part_of
from fastwi.analysis.studies.opened import OpenedSweep
from fastwi.analysis.studies.pairs import Tell
from fastwi.config.analysis import AnalysisOptions
from fastwi.config.schema import Config
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.experiment.resources import Resources
from fastwi.experiment.tree import OWN
from fastwi.population import Population

GAINS = tuple(f"gain_{over}_{treatment}_points" for treatment in (OWN, RECOMPUTED) for over in ("best", "mean"))
"""The gains that quantities are correlated with."""

QUANTITIES = {
    "k": "k: epochs of the parent",
    "s": "s: epochs of each child",
    "learning_rate": "learning rate of the children's last epoch",
    "distance_l2": "children's L2 distance",
    "relative_distance": "children's distance / parent's norm",
    "displacement_l2": "children's mean L2 way from the parent",
    "displacement_cosine": "cosine of the children's ways",
    "disagreement_%": "children's disagreement on test images (%)",
    "kl_nats": "children's KL divergence on test images (nats)",
    "tangent_departure": "departure from the tangent regime",
    "error_barrier_points": "error barrier (points)",
    "loss_barrier_nats": "loss barrier (nats)",
    "error_barrier_recomputed_points": "error barrier, recomputed (points)",
    "loss_barrier_recomputed_nats": "loss barrier, recomputed (nats)",
    "parent_accuracy_%": "parent's test accuracy at k (%)",
    "children_accuracy_%": "children's mean test accuracy (%)",
    "children_train_loss_nats": "children's training loss in their last epoch (nats)",
}
"""What the gain is compared with, by column of the frame, in words."""

COLUMNS = STUDY_COLUMNS | {
    **{
        f"gain_{over}_{treatment}_points": ("points", f"accuracy of the average less {text}, {treatment} statistics")
        for treatment in (OWN, RECOMPUTED)
        for over, text in (("best", "the best child's"), ("mean", "the children's mean"))
    },
    **{name: ("", text) for name, text in QUANTITIES.items() if name not in STUDY_COLUMNS},
    "gain": ("", "which gain"),
    "quantity": ("", "what it is correlated with"),
    "scope": ("", "over all pairs, or within cells: after the mean of each cell was subtracted"),
    "spearman": ("1", "Spearman's rank correlation"),
    "low": ("1", "lower end of its 95 % interval over parents; null: none"),
    "high": ("1", "upper end"),
    "n_parents": ("", "parents"),
    "n_pairs": ("", "pairs"),
    "note": ("", "what must be said beside the interval"),
}
"""Unit and meaning of the columns of both frames; units of quantities are in their names and texts."""

SCOPES = ("all pairs", "within cells")
_CORRELATION_TYPES: dict[str, Any] = {
    "gain": polars.String, "quantity": polars.String, "scope": polars.String, "spearman": polars.Float64,
    "low": polars.Float64, "high": polars.Float64, "n_parents": polars.Int64, "n_pairs": polars.Int64,
    "note": polars.String,
}  # fmt: skip


def governance(opened: OpenedSweep, options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Frames:

    - pairs: one row a pair: axes, k, s, alpha, parent_seed, pair, the gains at interpolation in percentage points
      (as the sweep measured them; over best child and children's mean, own and recomputed statistics), then
      `QUANTITIES`. Distances are of parameters; `learning_rate` is that of the children's last epoch.
      `tangent_departure` is the mean over images of ||f(average) - mean of f(children)||_2 over the mean of
      ||f(child) - mean of f(children)||_2, f the logits: 0 where the network is linear in its weights between the
      children (the tangent regime of Izmailov et al. 2018, section 3.5), without a unit. Tuples of more than two
      children have the mean over their pairs. Null: not measured, or not finite.
    - correlations: Spearman's rank correlation of each gain with each quantity, over all pairs and within cells,
      with its interval over parents.

    Barriers take `options.alphas` places from 0 to 1 on test images; recomputed ones only where
    `options.treatments` has them. Raises UserError where a state at k or k + s is missing.
    """
    pairs = chosen_pairs(opened, options)
    evaluators: dict[tuple[object, ...], Evaluator] = {}
    rows = []
    for done, pair in enumerate(pairs):
        tell(done, len(pairs))
        rows.append({**pair.columns(), **_gains(opened, pair), **_quantities(opened, pair, options, evaluators)})
    tell(len(pairs), len(pairs))
    types = pair_types(opened.planned.spec)
    columns = types | {name: polars.Float64 for name in (*GAINS, *QUANTITIES) if name not in types}
    frame = polars.DataFrame(rows, schema=columns)
    return {"pairs": frame, "correlations": correlations(frame)}


def correlations(pairs: polars.DataFrame) -> polars.DataFrame:
    """The frame `correlations` of a frame `pairs`: a row for each gain, quantity and scope that has data.

    Pairs that lack one of the two numbers are left out; n counts those that are in.
    """
    cell = [*pairs.columns[: pairs.columns.index("k") + 2], "alpha"]
    rows = []
    for gain, quantity in itertools.product(GAINS, QUANTITIES):
        there = pairs.drop_nulls([gain, quantity])
        if not there.height:
            continue
        parents = there["parent_seed"].to_list()
        for scope in SCOPES:
            values = []
            for name in (gain, quantity):
                column = polars.col(name).cast(polars.Float64)
                # Rounded: the mean of equal numbers may differ from them in its last digit, and ranks would see it.
                shown = (column - column.mean().over(cell)).round(10) if scope == SCOPES[1] else column
                values.append(there.select(shown).to_series().to_numpy())
            found = _spearman(values[0], values[1], parents)
            rows.append({
                "gain": gain, "quantity": quantity, "scope": scope, "spearman": found.value, "low": found.low,
                "high": found.high, "n_parents": found.n_parents, "n_pairs": found.n_pairs, "note": found.note,
            })  # fmt: skip
    return polars.DataFrame(rows, schema=_CORRELATION_TYPES)


def _spearman(x_n: Any, y_n: Any, parents: list[int]) -> Estimate:
    """`spearman`, undefined for a single pair."""
    if len(x_n) == 1:
        return Estimate(None, None, None, 1, 1, 0.95, "undefined: one pair has no order")
    return spearman(x_n, y_n, parents)


def _gains(opened: OpenedSweep, pair: ChosenPair) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(GAINS)
    for name, treatment in zip((OWN, RECOMPUTED), pair.place.treatments, strict=False):
        keys = [(state, treatment) for state in (pair.place.average, *pair.place.ends)]
        if all(key in opened.measured for key in keys):
            average, *children = (opened.measured[key].test_accuracy for key in keys)
            found[f"gain_best_{name}_points"] = average - max(children)
            found[f"gain_mean_{name}_points"] = average - sum(children) / len(children)
    return found


def _quantities(
    opened: OpenedSweep,
    pair: ChosenPair,
    options: AnalysisOptions,
    evaluators: dict[tuple[object, ...], Evaluator],
) -> dict[str, float | None]:
    place, config = pair.place, pair.config
    clone = place.clone
    train, test = opened.resident_splits(config)
    part, _ = part_of(test, options.test_images, "analysis.test_images")
    count = len(place.ends)
    networks = opened.states([*place.ends, clone, place.average])
    members = list(range(count))
    pairs = list(itertools.combinations(members, 2))
    evaluator = _evaluator(evaluators, config, opened.resources)
    weights = weight_distances(networks, members, parent=count)
    assert weights.displacement_C is not None
    assert weights.cosine_CC is not None
    functions = function_distances(evaluator, networks, part, members)
    norm = float(torch.linalg.vector_norm(networks.weights_MP[count].double()))
    distance = _mean([weights.l2_CC[i, j] for i, j in pairs])
    ends = [opened.measured[end, OWN] for end in place.ends]
    parent = opened.measured.get((clone, OWN))
    found: dict[str, float | None] = {
        "learning_rate": ends[0].learning_rate if pair.s else None,
        "distance_l2": distance,
        "relative_distance": distance / norm if norm and distance is not None else None,
        "displacement_l2": _mean(weights.displacement_C),
        "displacement_cosine": _mean([weights.cosine_CC[i, j] for i, j in pairs]),
        "disagreement_%": _mean([functions.disagreement_CC[i, j] for i, j in pairs]),
        "kl_nats": _mean([functions.kl_CC[i, j] for i, j in (*pairs, *((j, i) for i, j in pairs))]),
        "tangent_departure": _tangent_departure(evaluator, networks, part, members, count + 1),
        "parent_accuracy_%": None if parent is None else parent.test_accuracy,
        "children_accuracy_%": _mean([end.test_accuracy for end in ends]),
        "children_train_loss_nats": _mean([end.train_loss for end in ends]) if pair.s else None,
    }
    chosen = tuple(t for t in (AVERAGED, RECOMPUTED) if t in options.treatments)
    recomputation = Recomputation(
        train, Noise(config.seeds.statistics_noise), config.experiment.recompute_images,
        config.experiment.k + config.experiment.s,
    )  # fmt: skip
    barriers = [
        barrier
        for i, j in pairs
        for barrier in barrier_between(
            evaluator, networks, {"test": part}, ends=(i, j), alphas=options.alphas, treatments=chosen,
            recomputation=recomputation,
        )
    ]  # fmt: skip
    for treatment, text in ((AVERAGED, ""), (RECOMPUTED, "recomputed_")):
        here = [barrier for barrier in barriers if barrier.treatment == treatment]
        found[f"error_barrier_{text}points"] = _mean([barrier.error for barrier in here])
        found[f"loss_barrier_{text}nats"] = _mean([barrier.loss for barrier in here])
    return found


def _evaluator(evaluators: dict[tuple[object, ...], Evaluator], config: Config, resources: Resources) -> Evaluator:
    """One for each network and augmentation: compiling takes longer than measuring."""
    kind = (config.model, config.engine, config.augment, config.optimizer.batch_size)
    if kind not in evaluators:
        evaluators[kind] = Evaluator(
            resources.network(config), config.engine, config.optimizer.batch_size,
            config.augment,
        )  # fmt: skip
    return evaluators[kind]


def _tangent_departure(
    evaluator: Evaluator, networks: Population, dataset: ResidentDataset, children: list[int], average: int
) -> float | None:
    """How far the average's logits are from the mean of the children's, in units of the children's spread."""
    off, spread = torch.zeros(2, dtype=torch.float64, device=evaluator.device)
    for _, logits_MNK in evaluator.batches(networks, [*children, average], dataset):
        children_CNK, average_NK = logits_MNK[:-1].double(), logits_MNK[-1].double()
        mean_NK: Tensor = children_CNK.mean(dim=0)
        off += torch.linalg.vector_norm(average_NK - mean_NK, dim=1).sum()
        spread += torch.linalg.vector_norm(children_CNK - mean_NK, dim=2).mean(dim=0).sum()
    return float(off / spread) if float(spread) > 0 and math.isfinite(float(off / spread)) else None


def _mean(values: Any) -> float | None:
    """The mean, or None where there is none that is finite."""
    mean = float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else math.nan
    return mean if math.isfinite(mean) else None
