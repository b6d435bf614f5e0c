"""connectivity: each number against the stored networks, interpolated and evaluated by hand."""

import numpy as np
import polars
import pytest
from studied import WITHIN, by_cell, check, column, measured, mixed, presented, state_of, studied_sweep

from fastwi.analysis.pairs import all_pairs, chosen_lines, chosen_pairs
from fastwi.config.sweep import AnalysisOptions
from fastwi.errors import UserError
from fastwi.report.drawing import Sheet
from fastwi.report.rows import gains
from fastwi.report.tables import cell_table
from fastwi.studies.connectivity import STUDY, line_places

NAMES = ("k", "s", "parent_seed", "pair")


@pytest.fixture(scope="module")
def frames(opened):
    return measured("connectivity", opened, alphas=4)


def test_the_line_is_that_of_the_stored_networks(opened, frames, seed):
    line, pairs = frames["line"], by_cell(opened)
    assert line.columns[:5] == [*NAMES, "batch_norm"]
    alphas = [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    assert line.height == 8 * 2 * len(alphas)
    np.testing.assert_allclose(sorted(set(line["alpha"])), alphas, rtol=0, atol=1e-15)
    for i in np.random.default_rng(seed).permutation(line.height)[:10]:
        row = line.row(int(i), named=True)
        a, b = (state_of(opened, end) for end in pairs[row["k"], row["s"], row["parent_seed"]].place.ends)
        for split in ("train", "test"):
            check(opened, row, mixed((1 - row["alpha"], a), (row["alpha"], b)), split)


def test_the_ends_and_the_middle_are_what_the_sweep_measured(opened, frames):
    """To the bit; under recomputed statistics too: on the very images that the sweep recomputed them on."""
    seen = 0
    for row in frames["line"].iter_rows(named=True):
        place = by_cell(opened)[row["k"], row["s"], row["parent_seed"]].place
        state = {0.0: place.ends[0], 0.5: place.average, 1.0: place.ends[1]}.get(row["alpha"])
        treatment = dict(zip(("averaged", "recomputed"), place.treatments, strict=True))[row["batch_norm"]]
        if state is not None:
            found = opened.measured[state, treatment]
            assert (row["test_loss_nats"], row["test_error_%"]) == (found.test_loss, 100 - found.test_accuracy)
            seen += 1
    assert seen == 8 * 2 * 3


def test_barriers_and_gains_are_those_of_the_line(frames):
    barrier = frames["barrier"]
    assert barrier.height == 8 * 2 * 2
    for row in barrier.iter_rows(named=True):
        line = frames["line"].filter(**{name: row[name] for name in (*NAMES, "batch_norm")}).sort("alpha")
        alpha = line["alpha"].to_numpy()
        on = alpha != 0.5  # not among 4 evenly spaced places
        assert row["places"] == 4
        for name, unit, value in (("error_%", "points", "error"), ("loss_nats", "nats", "loss")):
            every = line[f"{row['split']}_{name}"].to_numpy()
            first, last, (middle,) = every[0], every[-1], every[~on]
            expected = {
                f"barrier_{value}_{unit}": every[on].max() - (first + last) / 2,
                f"barrier_{value}_linear_{unit}": (every - (1 - alpha) * first - alpha * last)[on].max(),
                f"barrier_{value}_at_{unit}": (every - (1 - alpha) * first - alpha * last)[on][every[on].argmax()],
                f"alpha_of_largest_{value}": alpha[on][every[on].argmax()],
                f"gain_mean_{unit}": (first + last) / 2 - middle,
                f"gain_best_{unit}": min(first, last) - middle,
            }
            assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert barrier["gain_mean_nats"].n_unique() == barrier.height


@pytest.mark.parametrize(
    ("options", "places", "counted"),
    [
        ({"alphas": 5, "low": -0.5, "high": 1.5}, [-0.5, 0.0, 0.5, 1.0, 1.5], [-0.5, 0.0, 0.5, 1.0, 1.5]),
        # numpy's middle one is 0.5000000000000001.
        ({"alphas": 3, "low": -0.1, "high": 1.1}, [-0.1, 0.0, 0.5, 1.0, 1.1], [-0.1, 0.0, 0.5, 1.0, 1.1]),
        ({"alphas": 2, "low": 0.2, "high": 0.4}, [0.0, 0.2, 0.4, 0.5, 1.0], [0.0, 0.2, 0.4, 1.0]),
        ({}, sorted([*np.linspace(0, 1, 30), 0.5]), list(np.linspace(0, 1, 30))),
    ],
)
def test_places_on_the_line(options, places, counted):
    alphas_L, counts_L = line_places(AnalysisOptions(**options))
    assert alphas_L.tolist() == places
    assert alphas_L[counts_L].tolist() == counted


def test_cells_pairs_and_images_are_chosen(opened, pairs, variants):
    how = {"treatments": ("averaged",), "alphas": 2}
    line = measured("connectivity", opened, cells=("2,1", "1,2"), train_images=10, test_images=20, **how)["line"]
    assert line.select("k", "s").unique(maintain_order=True).rows() == [(2, 1), (1, 2)]
    assert line.height == 2 * 2 * 3
    for split, one in (("train", 10), ("test", 5)):  # of so many %
        errors = line[f"{split}_error_%"].to_numpy()
        assert errors == pytest.approx(one * np.round(errors / one))
    for most, found in ((0, {0, 1}), (1, {0})):
        assert set(measured("connectivity", pairs, pairs=most, **how)["line"]["pair"]) == found
    # Points that differ in alpha have one line; those that differ in another axis have each their own.
    line = measured("connectivity", variants, **how)["line"]
    assert line.columns[0] == "experiment.momentum"
    assert line.height == 2 * 2 * 3


def test_the_largest_k_and_s_come_first(opened):
    cells = dict.fromkeys((pair.k, pair.s) for pair in chosen_pairs(opened, AnalysisOptions()))
    assert list(cells) == [(2, 2), (2, 1), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        (("--axes.experiment.k", "1,4"), {}, "lacks 8 states, the first at epoch 5; run the sweep"),
        (("--sweep.children", "4", "--sweep.tuple_size", "4"), {}, "sweep.tuple_size: 4"),
        ((), {"train_images": 61}, "analysis.train_images: 61"),
        ((), {"test_images": 51}, "analysis.test_images: 51"),
        ((), {"cells": ("7,7",)}, "no pair of these cells"),
    ],
)
def test_refusals(digits_directory, tmp_path_factory, flags, options, message):
    with (
        studied_sweep(digits_directory, tmp_path_factory, *flags, trains=False) as other,
        pytest.raises(UserError) as caught,
    ):
        measured("connectivity", other, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_line_is_between_the_children_at_alpha_one_half(digits_directory, tmp_path_factory, opened, rounds):
    """After a round children start from an average, which alpha decides."""
    flags = "--experiment.rounds", f"{rounds}", "--sweep.alphas"
    with studied_sweep(digits_directory, tmp_path_factory, *flags, "[0.25, 0.5]", trains=False) as other:
        expected = {pair.place.ends for pair in all_pairs(other) if pair.point.alpha == 0.5}
        assert {line.place.ends for line in chosen_lines(other, AnalysisOptions())} == expected
    with studied_sweep(digits_directory, tmp_path_factory, *flags, "[0.25, 0.75]", trains=False) as other:
        if rounds == 1:
            assert len(chosen_lines(other, AnalysisOptions())) == 2 * 2 * 2
        else:
            with pytest.raises(UserError, match=r"sweep\.alphas"):
                chosen_lines(other, AnalysisOptions())


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("connectivity", frames, tmp_path)
    named = {
        "Error barrier over the mean": ("barrier_error_points", 2),
        "Error barrier over the line": ("barrier_error_linear_points", 2),
        "The same where": ("barrier_error_at_points", 2),
        "Loss barrier over the mean": ("barrier_loss_nats", 4),
        "Loss barrier over the line": ("barrier_loss_linear_nats", 4),
        "Gain at alpha = 0.5 over the better": ("gain_best_points", 2),
        "Gain at alpha = 0.5 over the mean": ("gain_mean_points", 2),
    }
    own = frames["barrier"].filter(batch_norm="averaged")
    for table, (title, (name, digits)) in zip(tables, named.items(), strict=False):
        assert table.title.startswith(title)
        assert "n = 2: too few parents" in table.title
        assert "[" not in table.title
        assert table.columns[:4] == ("k", "s", "parents", "pairs")
        assert table.rows[1][:4] == ("1", "2", "2", "2")
        for split in ("train", "test"):
            means = [own.filter(k=int(row[0]), s=int(row[1]), split=split)[name].mean() for row in table.rows]
            assert column(table, f"{split}, averaged") == [f"{mean:+.{digits}f} (n = 2)" for mean in means]
    panels = {axis.get_title(): axis for axis in STUDY.draw(frames, "").axes}
    for label, name in (
        ("error barrier (points)", "barrier_error_points"),
        ("loss barrier (nats)", "barrier_loss_nats"),
    ):
        means = [own.filter(k=k, s=1, split="test")[name].mean() for k in (1, 2)]
        assert panels[f"{label}\naveraged statistics"].lines[0].get_ydata() == pytest.approx(means)
    thick = [line for line in panels["k = 1, s = 1; n = 2 parents, 2 pairs"].lines if line.get_linewidth() == 1.8]
    for line, treatment in zip(thick, ("averaged", "recomputed"), strict=True):
        here = frames["line"].filter(k=1, s=1, batch_norm=treatment)
        means = here.group_by("alpha").agg(polars.col("test_error_%").mean()).sort("alpha")
        assert line.get_ydata() == pytest.approx(means["test_error_%"].to_numpy())
    # What lines, thin lines and dots are is said.
    for text in ("test images, each pair", "training images, mean over parents", "dots: each parent"):
        assert text in drawn


def test_an_estimate_is_drawn_where_its_interval_is():
    values = {
        "parent_seed": [0, 1, 2, 3, 4] * 2, "pair": [0] * 10, "k": [2] * 5 + [1] * 5,
        "barrier": [1.1, 1.3, 1.2, 1.5, 1.4, 0.1, 0.3, 0.2, 0.5, 0.4],
    }  # fmt: skip
    sheet = Sheet(1, 1)
    axis = sheet.axes[0, 0]
    sheet.curve(axis, polars.DataFrame(values), "k", "barrier", apart=0.25, color="k")
    estimate, *intervals = axis.lines
    assert list(estimate.get_xdata()) == [1.25, 2.25]  # in order, whatever that of the rows is
    assert estimate.get_ydata() == pytest.approx([0.3, 1.3])
    for interval, x, y in zip(intervals, (1.25, 2.25), (0.3, 1.3), strict=True):
        assert set(interval.get_xdata()) == {x}
        assert min(interval.get_ydata()) < y < max(interval.get_ydata())


@pytest.fixture(scope="module")
def unstable(digits_directory, tmp_path_factory):
    """An instability analysis: cloned within epochs of 3 iterations, all children trained to the end of epoch 2."""
    with studied_sweep(digits_directory, tmp_path_factory, *WITHIN) as opened:
        yield opened, measured("connectivity", opened, alphas=3)


def test_instability_is_measured_against_iterations(unstable, tmp_path):
    opened, frames = unstable
    ks, steps = [0, 2, 3, 4], 3
    barrier = frames["barrier"]
    assert barrier["k"].unique(maintain_order=True).to_list() == [k / steps for k in ks]
    assert barrier["k_iterations"].unique(maintain_order=True).to_list() == ks
    assert barrier["s"].unique(maintain_order=True).to_list() == [(2 * steps - k) / steps for k in ks]
    for row in barrier.filter(split="test").iter_rows(named=True):
        place = by_cell(opened)[row["k"], row["s"], row["parent_seed"]].place
        errors = dict.fromkeys((0.0, 0.5, 1.0), 0.0)
        treatment = dict(zip(("averaged", "recomputed"), place.treatments, strict=True))[row["batch_norm"]]
        for alpha, state in zip(errors, (place.ends[0], place.average, place.ends[1]), strict=True):
            errors[alpha] = 100 - opened.measured[state, treatment].test_accuracy
        expected = max(errors.values()) - (errors[0.0] + errors[1.0]) / 2
        assert row["barrier_error_points"] == pytest.approx(expected, abs=1e-12)
    tables, drawn = presented("connectivity", frames, tmp_path)
    for table in (tables[0], cell_table(gains(opened.planned, opened.measured))):
        assert (column(table, "k"), column(table, "s")) == (["0", "2it", "1", "4it"], ["2", "4it", "1", "2it"])
    stable = tables[-1]
    assert column(stable, "k_iterations") == [str(k) for k in ks for _ in range(4)]
    values = barrier.filter(k_iterations=2, split="test", batch_norm="recomputed")["barrier_error_points"]
    at = [row[:-4][-3:] for row in stable.rows].index(("2", "test", "recomputed"))
    assert column(stable, "below the limit by")[at] == f"{2 - values.mean():+.2f} (n = 2)"
    assert set(column(stable, "stable")) == {"not settled (n = 2)"}
    for text in ("k: iterations of the parent", "k + s = 2"):
        assert text in drawn


@pytest.mark.parametrize("study", ["importance", "controls", "rounds"])
def test_other_studies_of_times_within_epochs(unstable, study):
    """Parts of epochs are not counted as whole ones."""
    opened, _ = unstable
    frames = measured(study, opened)
    if study == "controls":
        assert set(frames["controls"].drop_nulls("epochs")["k"]) <= {0.0, 1.0}
        return
    if study == "importance":
        assert set(frames["scores"]["score_epoch"]) == {1}  # the parents end within the second
    every = [frame[name] for frame in frames.values() for name in {"epoch", "epochs_after"} & set(frame.columns)]
    assert every
    for each in every:
        times = each.drop_nulls().to_numpy()
        assert times * 3 == pytest.approx(np.round(times * 3), abs=1e-9)
        assert (times % 1 > 0).any()


def test_what_is_not_defined_is_said_and_drawn(frames, tmp_path):
    holes = {
        name: frame.with_columns(
            polars.when(polars.col("batch_norm") == "averaged").then(None).otherwise(polars.col(column)).alias(column)
            for column, kind in frame.schema.items()
            if kind == polars.Float64 and column != "alpha"
        )
        for name, frame in frames.items()
    }
    tables, _ = presented("connectivity", holes, tmp_path)
    assert "not defined" in tables[0].markdown()
