"""noise: scales against a plain loop over training batches in float64, and correlations of cell means."""

import numpy as np
import polars
import pytest
import torch
from scipy import stats
from studied import column, measured, presented, state_of, studied_sweep
from torch.nn import functional

from fastwi.analysis.pairs import all_pairs
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_network
from fastwi.kernels.augment import augment
from fastwi.studies.noise import OUTCOMES, QUANTITIES, STUDY

AXES = (
    "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--axes.optimizer.batch_size", "[10, 20]",
    "--axes.augment.padding", "[0, 2]", "--experiment.after", "0", "--schedule.drop_epochs", "[1]",
    "--schedule.drop_factor", "0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def swept(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory, *AXES) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def frames(swept):
    return measured("noise", swept, alphas=3)


def test_noise_of_every_cell(swept, frames, seed):
    pairs = all_pairs(swept)
    assert frames["pairs"].height == len(pairs) == 2 * 4
    for i in np.random.default_rng(seed).permutation(len(pairs))[:4]:
        pair = pairs[i]
        axes = [polars.col(name) == value for name, value in pair.variant]
        (row,) = frames["pairs"].filter(*axes, parent_seed=pair.point.parent).rows(named=True)
        config, optimizer = pair.config, pair.config.optimizer
        train, _ = swept.resources.splits(config)
        size = optimizer.batch_size
        draws = Noise(0, statistics=True).draws(2, 60, config.augment.padding, 0.0)
        order, offset = (torch.from_numpy(each.astype(np.int64)) for each in (draws.order_N, draws.offset_N2))
        variances, norms = [], []
        for key in pair.place.ends:
            network = build_network(config, train.classes).double()
            network.load_state_dict(state_of(swept, key))
            rows = []
            for first in range(0, 60, size):
                part = slice(first, first + size)
                x = augment(
                    train.images_NHWC, order[part], offset[part], None, train.table_C256, config.augment.padding
                )
                loss = functional.cross_entropy(network.train()(x.double()), train.labels_N[order[part]])
                gradients = torch.autograd.grad(loss, list(network.parameters()))
                rows.append(torch.cat([g.reshape(-1) for g in gradients]).numpy())
            variances.append(np.var(rows, axis=0, ddof=1).sum())
            norms.append(sum(float((p.detach() ** 2).sum()) for p in network.parameters()))
        rate = 0.5 * optimizer.learning_rate  # it has dropped since the parent
        expected = {
            "learning_rate": rate, "batch_size": size, "weight_decay": optimizer.weight_decay,
            "padding": config.augment.padding, "flip": 0.0, "noise_settings": rate * 60 / size / 0.1,
            "gradient_variance": np.mean(variances), "weights_l2": np.mean(np.sqrt(norms)),
            "noise_measured": np.mean([rate / 0.1 * v / n for v, n in zip(variances, norms, strict=True)]),
        }  # fmt: skip
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=2e-3)
        networks = (pair.place.average, *pair.place.ends)  # at the three places of the line
        errors = [100 - swept.measured[key, "own"].test_accuracy for key in networks]
        assert row["gain_mean_own_points"] == pytest.approx(np.mean(errors[1:]) - errors[0])
        assert row["error_barrier_points"] == pytest.approx(max(errors) - np.mean(errors[1:]), abs=1e-4)
    assert frames["pairs"]["noise_measured"].n_unique() == 2 * 4
    assert frames["pairs"]["noise_settings"].n_unique() == 2


def test_correlations_of_cell_means(frames):
    pairs = frames["pairs"]
    names = [name for name in pairs.columns if "." in name]
    means = pairs.group_by(names).agg(polars.col("noise_measured", "error_barrier_points").mean())
    rows = frames["correlations"].filter(gain="error_barrier_points", quantity="noise_measured", scope="cell means")
    expected = stats.spearmanr(means["noise_measured"], means["error_barrier_points"]).statistic
    assert rows["spearman"].to_list() == [pytest.approx(expected, abs=1e-9)]
    assert (rows["n_parents"][0], rows["n_pairs"][0], rows["low"][0]) == (2, 8, None)
    assert set(frames["correlations"]["gain"]) == set(OUTCOMES)


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("noise", frames, tmp_path)
    assert len(tables) == len(OUTCOMES)
    assert column(tables[0], "pairs") == ["8"] * len(QUANTITIES)
    assert tables[0].columns[1] == "cell means"
    panels = {(axis.get_xlabel(), axis.get_ylabel()): axis.get_title() for axis in STUDY.draw(frames, "").axes}
    rows = frames["correlations"].filter(gain="error_barrier_points", quantity="noise_measured", scope="cell means")
    above = panels[QUANTITIES["noise_measured"], "error barrier (points)"]
    assert above.startswith(f"Spearman of cell means {rows['spearman'].item():+.2f} ")
    for text in ("learning rate 0.025", "batch size 20", "Spearman of cell means", "n = 2 parents, 8 pairs"):
        assert text in drawn
