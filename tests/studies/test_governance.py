"""governance against float64 networks and plain loops."""

import itertools

import numpy as np
import polars
import pytest
import torch
from scipy import stats
from studied import (
    THREE,
    accuracy,
    by_cell,
    column,
    logits,
    losses,
    mean_state,
    measured,
    presented,
    state_of,
    studied_sweep,
    unclear,
)

from fastwi.data.resident import even_subset
from fastwi.experiment.tree import OWN
from fastwi.studies import all_studies
from fastwi.studies.governance import GAINS, QUANTITIES, correlations

FIRST, *OTHERS = GAINS


@pytest.fixture(scope="module")
def frames(opened):
    return measured("governance", opened, alphas=3)


def vector(opened, state):
    layout = opened.resources.layout(opened.planned.points[0].config)
    names = {span.name for span in layout.parameters}
    return np.concatenate([state[name].numpy().ravel() for name in dict(layout.keys).values() if name in names])


def test_every_pair(opened, frames):
    pairs = frames["pairs"]
    assert pairs.height == len(opened.planned.points)
    test = opened.resources.splits(opened.planned.points[0].config)[1]
    for (k, s, parent_seed), pair in by_cell(opened).items():
        place = pair.place
        (row,) = pairs.filter(k=k, s=s, parent_seed=parent_seed).rows(named=True)
        a, b, parent = (state_of(opened, key) for key in (*place.ends, place.clone))
        a_P, b_P, o_P = (vector(opened, state) for state in (a, b, parent))
        ways = [a_P - o_P, b_P - o_P]
        norms = [np.linalg.norm(way) for way in ways]
        a_NK, b_NK, mean_NK = (logits(opened, state, test) for state in (a, b, mean_state([a, b])))
        of_a, middle, of_b = errors = [100 - accuracy(each, test) for each in (a_NK, mean_NK, b_NK)]
        loss = [losses(each, test).mean() for each in (a_NK, mean_NK, b_NK)]
        log_a, log_b = (each - np.logaddexp.reduce(each, axis=1)[:, None] for each in (a_NK, b_NK))
        both_ways = ((np.exp(log_a) - np.exp(log_b)) * (log_a - log_b)).sum(1)
        at_end = [opened.measured[key, OWN] for key in place.ends]
        off = np.linalg.norm(mean_NK - (a_NK + b_NK) / 2, axis=1).mean()
        expected = {
            "learning_rate": 0.05,
            "distance_l2": np.linalg.norm(a_P - b_P),
            "relative_distance": np.linalg.norm(a_P - b_P) / np.linalg.norm(o_P),
            "displacement_l2": np.mean(norms),
            "displacement_cosine": ways[0] @ ways[1] / (norms[0] * norms[1]),
            "disagreement_%": 100 * np.mean(a_NK.argmax(1) != b_NK.argmax(1)),
            "error_barrier_points": max(errors) - (of_a + of_b) / 2,
            "loss_barrier_nats": max(loss) - (loss[0] + loss[2]) / 2,
            "tangent_departure": off / (np.linalg.norm(a_NK - b_NK, axis=1) / 2).mean(),
            "gain_mean_own_points": (of_a + of_b) / 2 - middle,
            "gain_best_own_points": min(of_a, of_b) - middle,
            "kl_nats": both_ways.mean() / 2,
            "parent_accuracy_%": opened.measured[place.clone, OWN].test_accuracy,
            "children_train_loss_nats": np.mean([end.train_loss for end in at_end]),
            "children_accuracy_%": 100 - (of_a + of_b) / 2,
        }
        counted = 2 * max(map(unclear, (a_NK, b_NK, mean_NK)))  # by what rounding may change a share of the images
        for name, value in expected.items():
            slack = counted if name.endswith(("_%", "_points")) else 0.0
            assert row[name] == pytest.approx(value, rel=2e-3, abs=1e-5 + slack), name
        _, recomputed = place.treatments
        networks = [opened.measured[key, recomputed] for key in (place.average, *place.ends)]
        error, loss = np.array([(100 - each.test_accuracy, each.test_loss) for each in networks]).T
        expected = {
            "gain_best_recomputed_points": min(error[1:]) - error[0],
            "gain_mean_recomputed_points": np.mean(error[1:]) - error[0],
            "error_barrier_recomputed_points": max(error) - np.mean(error[1:]),
            "loss_barrier_recomputed_nats": max(loss) - np.mean(loss[1:]),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_of_three_children_the_mean_over_all_two_of_them(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory, *THREE) as three:
        how = {"alphas": 3, "treatments": ("averaged",), "test_images": 20}
        (row,) = measured("governance", three, **how)["pairs"].rows(named=True)
        test = three.resources.splits(three.planned.points[0].config)[1]
        test = test.part(torch.from_numpy(even_subset(test.labels_N.numpy(), 20)))
        place = three.planned.places[0]
        parent, *ends = (state_of(three, key) for key in (place.clone, *place.ends))
        ways = [vector(three, end) - vector(three, parent) for end in ends]
        found = []
        for i, j in itertools.combinations(range(3), 2):
            states = (ends[i], mean_state([ends[i], ends[j]]), ends[j])
            loss = [losses(logits(three, state, test), test).mean() for state in states]
            cosine = ways[i] @ ways[j] / (np.linalg.norm(ways[i]) * np.linalg.norm(ways[j]))
            found.append((np.linalg.norm(ways[i] - ways[j]), cosine, max(loss) - (loss[0] + loss[2]) / 2))
    names = ("distance_l2", "displacement_cosine", "loss_barrier_nats")
    assert [row[name] for name in names] == pytest.approx(np.mean(found, axis=0), rel=2e-3, abs=1e-5)
    assert row["learning_rate"] == pytest.approx(0.005)


def test_the_tangent_regime_is_of_the_plain_mean_whatever_alpha_is(opened, digits_directory, tmp_path_factory):
    flags = (
        "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--sweep.parents", "[0]",
        "--sweep.alphas", "[0.25]", "--experiment.after", "0",
    )  # fmt: skip
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep:
        (row,) = measured("governance", sweep, alphas=3, treatments=("averaged",))["pairs"].rows(named=True)
        test = sweep.resources.splits(sweep.planned.points[0].config)[1]
        a, b = (state_of(sweep, key) for key in sweep.planned.places[0].ends)
        a_NK, b_NK, mean_NK = (logits(sweep, state, test) for state in (a, b, mean_state([a, b])))
    off_N, spread_N = (np.linalg.norm(each, axis=1) for each in (mean_NK - (a_NK + b_NK) / 2, (a_NK - b_NK) / 2))
    assert row["alpha"] == 0.25
    assert row["tangent_departure"] == pytest.approx(off_N.mean() / spread_N.mean(), rel=2e-3)


def test_correlations_are_those_of_scipy(frames):
    pairs, found = frames["pairs"], frames["correlations"]
    checked = 0
    for row in found.rows(named=True):
        x, y = pairs[row["gain"]].to_numpy(), pairs[row["quantity"]].to_numpy().astype(float)
        if row["scope"] == "within cells":
            for cell in pairs.select("k", "s").unique().rows():
                here = (pairs.select("k", "s").to_numpy() == cell).all(1)
                x, y = np.where(here, x - x[here].mean(), x), np.where(here, y - y[here].mean(), y)
        x, y = x.round(10), y.round(10)  # differences of equal numbers are ties
        if np.ptp(x) and np.ptp(y):
            assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
            checked += 1
        else:
            assert row["spearman"] is None
        assert (row["n_parents"], row["n_pairs"], row["low"]) == (2, 8, None)  # 2 parents settle nothing
    assert checked > 40
    assert (set(found["gain"]), set(found["quantity"])) == (set(GAINS), set(QUANTITIES))


def as_ten_parents(frames, **columns) -> polars.DataFrame:
    """The real pairs as ten parents'."""
    copies = [frames["pairs"].with_columns(polars.col("parent_seed") + 2 * copy) for copy in range(5)]
    return polars.concat(copies).with_columns(**columns)


def test_intervals_over_parents_and_pairs_that_lack_a_number(frames, seed):
    # Noise in both, so that copies are no ties: among ties the correlation is the same without any one parent.
    distance, (x, y) = polars.col("distance_l2"), map(polars.Series, np.random.default_rng(seed).normal(size=(2, 40)))
    pairs = as_ten_parents(frames, distance_l2=distance + 1e-6 * x, gain_best_own_points=10 * distance + 1e-6 * y)
    there = polars.when(polars.col("parent_seed") != 3).then(polars.col("distance_l2"))
    for frame, parents in ((pairs, 10), (pairs.with_columns(there.alias("distance_l2")), 9)):
        rows = correlations(frame).filter(gain=FIRST, quantity="distance_l2", scope="all pairs")
        (row,) = rows.rows(named=True)
        assert (row["n_parents"], row["n_pairs"]) == (parents, 4 * parents)
        assert 0.9 < row["low"] <= row["spearman"]
    # Of one parent alone, within cells too, where its part in the cells' means moves all others.
    of_one = polars.when(polars.col("parent_seed") == 3).then(polars.col("distance_l2")).otherwise(1.0)
    alone = correlations(pairs.with_columns(kl_nats=of_one)).filter(gain=FIRST, quantity="kl_nats")
    for row in alone.rows(named=True):
        assert (row["spearman"] is None, row["low"]) == (False, None), row
        assert "undefined without one" in row["note"]


def test_cells_that_differ_in_alpha_are_apart(frames):
    """Within cells what all pairs of one alpha have in common says nothing."""
    beside = [
        frames["pairs"].with_columns(polars.lit(alpha).alias("alpha"), polars.col(FIRST, "distance_l2") + beyond)
        for alpha, beyond in ((0.25, 0.0), (0.75, 100.0))
    ]
    found = [correlations(pairs, [FIRST], ["distance_l2"]) for pairs in (frames["pairs"], polars.concat(beside))]
    alone, both = (dict(zip(rows["scope"], rows["spearman"], strict=True)) for rows in found)
    assert both["within cells"] == pytest.approx(alone["within cells"], abs=1e-6)
    assert both["all pairs"] > alone["all pairs"] + 0.1


def test_a_pair_counts_once_whatever_its_further_training_is(frames):
    """Axes that change only how the average is trained on leave a pair as it is, and other axes do not."""
    for path, values, pairs in (
        ("schedule.at_average", ("keep", "restart"), 8),
        ("trajectory.window", (3, 5), 8),
        ("experiment.child_momentum", ("keep", "reset"), 16),
    ):
        both = polars.concat(
            [frames["pairs"].select(polars.lit(value).alias(path), polars.all()) for value in values]
        )
        assert set(correlations(both)["n_pairs"]) == {pairs}


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("governance", frames, tmp_path)
    assert len(tables) == len(GAINS)
    for table in tables:
        assert "n = 2: too few" in table.title
        assert (set(column(table, "parents")), set(column(table, "pairs"))) == ({"2"}, {"8"})
        verdicts = [i for i, name in enumerate(table.columns) if name == "correlates"]
        assert {row[i] for row in table.rows for i in verdicts} == {"not settled (n = 2)"}
        said = column(table, "all pairs")
        strengths = [0.0 if cell == "not defined" else abs(float(cell.split()[0])) for cell in said]
        assert strengths == sorted(strengths, reverse=True)
    for text in ("k = 2", "s = 1", "n = 2 parents, 8 pairs", "error barrier (points)"):
        assert text in drawn
    panels = {axis.get_xlabel(): axis.get_title() for axis in all_studies()["governance"].draw(frames, "").axes}
    overall = frames["correlations"].filter(gain=FIRST, quantity="distance_l2", scope="all pairs")["spearman"].item()
    assert panels[QUANTITIES["distance_l2"]].startswith(f"{overall:+.2f} ")
    # A quantity that is the same for all pairs has no panel.
    assert "left out: 1 that" in drawn
    assert "learning rate" not in drawn


def test_verdicts_where_there_are_parents_enough(frames, seed):
    """Gains that fall with the distance and have nothing to do with the rest."""
    pairs = as_ten_parents(
        frames, gain_best_own_points=-polars.col("distance_l2"),
        kl_nats=polars.Series(np.random.default_rng(seed).normal(size=40)),
        **{gain: polars.lit(None, polars.Float64) for gain in OTHERS},
    )  # fmt: skip
    (table,) = all_studies()["governance"].tables({"correlations": correlations(pairs)})
    first = table.rows[0]
    assert first[0] == QUANTITIES["distance_l2"]
    assert first[1] == "-1.00 [-1.00, -0.38]"  # all 10 agree; 1 - 0.025^(1 / 10) = 31 % could differ unseen
    assert first[2] == "confirmed, falling"
    assert first[-2:] == ("10", "40")


def test_children_that_did_not_train_have_no_learning_rate(digits_directory, tmp_path_factory, opened):
    flags = ("--axes.experiment.k", "[1]", "--axes.experiment.s", "[0]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as untrained:
        pairs = measured("governance", untrained)["pairs"]
    names = ("learning_rate", "children_train_loss_nats", "distance_l2")
    assert pairs.select(names).rows() == [(None, None, 0.0)] * 2
