"""matching: each number against stored networks, permuted and interpolated by hand, and against connectivity."""

import itertools

import numpy as np
import polars
import pytest
import torch
from studied import (
    accuracy,
    bars,
    by_cell,
    column,
    logits,
    losses,
    measured,
    presented,
    state_of,
    studied_sweep,
    unclear,
)

from fastwi.analysis import Symmetry, images_of, match_activations, match_weights
from fastwi.analysis.measuring import Bench
from fastwi.config.sweep import AnalysisOptions
from fastwi.data.resident import even_subset
from fastwi.errors import UserError
from fastwi.studies.matching import STRANGERS, STUDY, _cells

HOW = {"alphas": 3, "cells": ("1,1",), "matching_images": 30}
KEYS = ["relation", "parent_seed", "other_seed", "pair", "matching", "repair"]


@pytest.fixture(scope="module")
def frames(opened):
    return measured("matching", opened, **HOW)


def test_unmatched_siblings_are_those_of_connectivity(opened, frames):
    """To the bit, without and with REPAIR: recomputed statistics."""
    other = measured("connectivity", opened, alphas=3, cells=("1,1",))["barrier"]
    rows = frames["barrier"].filter(relation="one parent", matching="none")
    assert rows.height == other.height == 2 * 2 * 2
    for row in rows.iter_rows(named=True):
        treatment = {"none": "averaged", "repair": "recomputed"}[row["repair"]]
        (same,) = other.filter(parent_seed=row["parent_seed"], split=row["split"], batch_norm=treatment).to_dicts()
        assert {name: row[name] for name in row if "barrier" in name} == {
            name: same[name] for name in row if "barrier" in name
        }


def test_different_parents_by_hand(opened, frames):
    """The network at 0.5 of the first children, B permuted by an order that weight matching finds, in float64."""
    pairs = by_cell(opened)
    config = pairs[1, 1, 0].config
    ends = [pairs[1, 1, parent].place.ends[0] for parent in (0, 1)]
    members = opened.states(ends)
    train, test = opened.resources.splits(config)
    symmetry = Symmetry.of(opened.resources.network(config), next(images_of(train, 4)))
    order = match_weights(symmetry, members, [(0, 1)])
    assert any((each != np.arange(each.shape[1])).any() for each in order)
    moved = symmetry.permute(members[1:], order).state_dict(0)
    kept = train.part(torch.from_numpy(even_subset(train.labels_N.numpy(), 30)))
    by_images = match_activations(symmetry, members, [(0, 1)], kept)
    as_active = symmetry.permute(members[1:], by_images).state_dict(0)
    found = frames["barrier"].filter(relation="different parents", split="test", repair="none")
    assert set(zip(found["parent_seed"], found["other_seed"], strict=True)) == {(0, 1)}
    for matching, b in (("none", state_of(opened, ends[1])), ("weights", moved), ("activations", as_active)):
        (row,) = found.filter(matching=matching).to_dicts()
        a = state_of(opened, ends[0])
        loss, errors = [], []
        for alpha in (0.0, 0.5, 1.0):
            state = {name: (1 - alpha) * a[name] + alpha * b[name].double() for name in a}
            logits_NK = logits(opened, state, test)
            loss.append(float(losses(logits_NK, test).mean()))
            errors.append(pytest.approx(100 - accuracy(logits_NK, test), abs=unclear(logits_NK) + 1e-9))
        assert row["barrier_loss_nats"] == pytest.approx(max(loss) - (loss[0] + loss[2]) / 2, rel=1e-3, abs=1e-5)
        assert row["middle_loss_nats"] == pytest.approx(loss[1], rel=1e-4)
        assert row["middle_error_%"] == errors[1]
    assert found["middle_loss_nats"].n_unique() == 3


def test_what_moves(frames):
    """Nothing without matching; nearly all between strangers; weights are more alike after weight matching."""
    barrier = frames["barrier"].filter(split="test", repair="none")
    assert barrier.height == 3 * 3
    assert set(barrier.filter(matching="none")["moved_%"]) == {0}
    strangers = {row["matching"]: row for row in barrier.filter(relation="different parents").to_dicts()}
    assert strangers["weights"]["moved_%"] > 20
    assert strangers["activations"]["moved_%"] > 20
    assert strangers["weights"]["weights_cosine"] > strangers["none"]["weights_cosine"] + 0.01
    siblings = barrier.filter(relation="one parent")
    assert siblings.filter(matching="none")["weights_cosine"].min() > strangers["none"]["weights_cosine"]
    layers = frames["layers"]
    assert layers.select(KEYS).unique().height == 3 * 3 * 2
    assert layers["layer"].n_unique() == 19
    assert layers["variance_ratio"].null_count() == 0
    collapsed = layers.filter(relation="different parents", matching="none")
    off = collapsed.group_by("repair").agg((polars.col("variance_ratio") - 1).abs().mean())
    ratios = dict(off.rows())
    assert ratios["repair"] < ratios["none"]


def test_pairs_of_different_parents_are_of_the_first_child_of_each(pairs):
    (cell,) = _cells(Bench(pairs, AnalysisOptions()).lines())
    relations = [name["relation"] for name in cell.names]
    assert relations == [STRANGERS, *["one parent"] * 4]
    first = [by_cell(pairs)[1, 1, parent].place.ends[0] for parent in (0, 1)]
    assert [cell.networks[member] for member in cell.rows[0]] == first


def test_one_parent_is_refused(digits_directory, tmp_path_factory):
    with (
        studied_sweep(digits_directory, tmp_path_factory, "--sweep.parents", "[0]", trains=False) as other,
        pytest.raises(UserError, match=r"sweep\.parents"),
    ):
        measured("matching", other)


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("matching", frames, tmp_path)
    error, loss, lowered, variance = tables
    assert column(error, "relation") == ["different parents"] * 2 + ["one parent"] * 2
    assert column(error, "parents") == ["2"] * 4
    row = frames["barrier"].filter(relation="different parents", split="test", repair="none", matching="weights")
    assert column(loss, "matching: weights")[0].startswith(f"{row['barrier_loss_nats'][0]:+.4f}")
    assert set(column(lowered, "above 0")) == {"not settled (n = 2)"}
    unmoved = frames["barrier"].filter(relation="different parents", split="test", repair="none", matching="none")
    assert bars("matching", frames)["test error barrier (points)"][0] == unmoved["barrier_error_points"].item()
    ratios = frames["layers"].filter(relation="different parents", repair="none", matching="none")
    of_layers = STUDY.draw(frames, "").axes[2].lines[0]
    assert of_layers.get_ydata() == pytest.approx(ratios.sort("layer_number")["variance_ratio"].to_numpy())
    assert len(variance.rows) == 4
    for text in ("different parents: k = 1, s = 1", "one parent: k = 1, s = 1", "matching: weights", "dots: each"):
        assert text in drawn


def test_a_parent_that_is_alone_in_its_cell_is_drawn(frames, tmp_path):
    alone = {name: frame.filter(relation="one parent", parent_seed=1) for name, frame in frames.items()}
    _, drawn = presented("matching", alone, tmp_path)
    assert "matching: weights" in drawn


def test_barriers_lowered_are_paired_and_judged_over_parents(frames):
    """Five parents whose barriers all fall by 3 or 4 points: confirmed, with n parents and n (n - 1) / 2 pairs."""
    row = (
        frames["barrier"]
        .filter(relation="different parents", split="test", repair="none", matching="none")
        .to_dicts()[0]
    )
    rows = []
    for a in range(5):
        for b in range(a + 1, 5):
            for matching, less in (("none", 0), ("weights", 3 + (a == 0)), ("activations", 0.1 * (-1) ** (a + b))):
                named = {"parent_seed": a, "other_seed": b, "matching": matching}
                rows.append({**row, **named, "barrier_error_points": 10 + a - less})
    for parent, pair in itertools.product(range(5), range(2)):  # siblings: two pairs of each parent
        for matching, less in (("none", 0), ("weights", parent), ("activations", 7)):
            named = {"parent_seed": parent, "other_seed": parent, "pair": pair, "matching": matching}
            barrier = 10 * pair + parent - less
            rows.append({**row, **named, "relation": "one parent", "barrier_error_points": float(barrier)})
    made = polars.DataFrame(rows, schema=frames["barrier"].schema)
    lowered = STUDY.tables({"barrier": made, "layers": frames["layers"]})[2]
    assert column(lowered, "matching") == ["weights", "activations"] * 2
    assert column(lowered, "above 0")[:2] == ["confirmed", "not settled"]
    assert column(lowered, "parents") == ["5"] * 4
    assert column(lowered, "pairs") == ["10"] * 4
    assert lowered.rows[0][5].startswith("+3.40 [")
    assert lowered.rows[2][5].startswith("+2.00 [")
