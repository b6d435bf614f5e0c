"""representation: CKA of the stored networks' logits in float64, and whether the average is closer."""

import itertools

import numpy as np
import polars
import pytest
import torch
from studied import (
    THREE,
    by_cell,
    column,
    logits,
    mean_state,
    measured,
    presented,
    state_of,
    studied_sweep,
    tables_at_two_alphas,
    treated,
)

from fastwi.data.noise import Stream, permutation
from fastwi.data.resident import even_subset
from fastwi.studies.representation import AVERAGE, CHILDREN, PARENT, PARENT_AVERAGE, STUDY, closer


@pytest.fixture(scope="module")
def frames(opened):
    return measured("representation", opened, cells=("1,2", "2,1"))


def cka(x, y):
    """By distances from the means: Kornblith et al.'s biased CKA has no diagonal left out; this one has."""

    def centred(z):
        n = len(z)
        k = z @ z.T
        np.fill_diagonal(k, 0)
        k = k - k.sum(0) / (n - 2) - k.sum(1)[:, None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k.ravel()

    a, b = centred(x), centred(y)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_the_last_layer_is_that_of_the_stored_networks(opened, frames):
    frame = frames["similarity"]
    assert frame["between"].unique(maintain_order=True).to_list() == [CHILDREN, AVERAGE, PARENT, PARENT_AVERAGE]
    assert frame.height == 2 * 2 * 2 * 12 * 4
    _, test = opened.resources.splits(opened.planned.points[0].config)
    order = permutation(0, Stream.SUBSET, 1, len(test))
    for (k, s, parent), pair in by_cell(opened).items():
        rows = frame.filter(k=k, s=s, parent_seed=parent, layer="linear")
        for (treatment,), here in rows.group_by("batch_norm"):
            ends = [state_of(opened, end) for end in pair.place.ends]
            states = [*ends, mean_state(ends), state_of(opened, pair.place.clone)]
            a, b, average, of_parent = (
                logits(opened, treated(opened, state, treatment, k + s), test)[order] for state in states
            )
            expected = {
                CHILDREN: cka(a, b), AVERAGE: (cka(a, average) + cka(b, average)) / 2,
                PARENT: (cka(a, of_parent) + cka(b, of_parent)) / 2, PARENT_AVERAGE: cka(average, of_parent),
            }  # fmt: skip
            assert dict(here.select("between", "cka").rows()) == pytest.approx(expected, abs=1e-5)
    assert frame["cka"].n_unique() > frame.height / 2


def test_of_three_children_all_two_are_compared(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory, *THREE) as three:
        how = {"treatments": ("averaged",), "test_images": 40}
        found = measured("representation", three, **how)["similarity"].filter(layer="linear")
        place, (_, test) = three.planned.places[0], three.resources.splits(three.planned.points[0].config)
        test = test.part(torch.from_numpy(even_subset(test.labels_N.numpy(), 40)))
        order = permutation(0, Stream.SUBSET, 1, 40)
        outputs = [logits(three, state_of(three, end), test)[order] for end in place.ends]
    expected = np.mean([cka(*two) for two in itertools.combinations(outputs, 2)])
    # Children are alike: the mean over the first two alone differs by 2e-4.
    assert found.filter(between=CHILDREN)["cka"].item() == pytest.approx(expected, abs=1e-5)


def test_closer_is_paired_by_layer(frames):
    frame = frames["similarity"]
    found = closer(frame, AVERAGE, CHILDREN)
    assert found.height == 2 * 2 * 2
    row = found.row(3, named=True)
    rows = frame.filter(**{name: row[name] for name in ("k", "s", "parent_seed", "batch_norm")})
    means = {name: rows.filter(between=name)["cka"].mean() for name in (AVERAGE, CHILDREN)}
    assert row["cka"] == pytest.approx(means[AVERAGE] - means[CHILDREN])
    # A layer that is not defined for one of them is left out for both.
    hole = (polars.col("layer") == "conv") & (polars.col("between") == CHILDREN)
    holes = frame.with_columns(polars.when(hole).then(None).otherwise("cka").alias("cka"))
    without = closer(frame.filter(polars.col("layer") != "conv"), AVERAGE, CHILDREN)
    assert closer(holes, AVERAGE, CHILDREN)["cka"].to_list() == pytest.approx(without["cka"].to_list())


def test_tables_and_figure(frames, tmp_path):
    (statements, by_layer), drawn = presented("representation", frames, tmp_path)
    assert column(statements, "batch norm") == ["own", "recomputed"] * 2
    assert column(statements, "pairs") == ["4"] * 4
    own = dict(frames["similarity"].filter(batch_norm="own").group_by("between").agg(polars.col("cka").mean()).rows())
    for row, (more, less) in zip(statements.rows[::2], ((AVERAGE, CHILDREN), (PARENT_AVERAGE, PARENT)), strict=True):
        assert row[2].startswith(f"{own[more] - own[less]:+.4f}")
    axes = STUDY.draw(frames, "").axes
    for axis, treatment in zip(axes[:2], ("own", "recomputed"), strict=True):
        here = frames["similarity"].filter(k=1, s=2, batch_norm=treatment, between=CHILDREN)
        means = here.group_by("layer_number").agg(polars.col("cka").mean()).sort("layer_number")
        assert axis.lines[0].get_ydata() == pytest.approx(means["cka"].to_numpy())
    layers = frames["similarity"]["layer"].unique(maintain_order=True).to_list()
    assert column(by_layer, "layer") == layers * 2
    assert column(by_layer, "k") == [text for text, _ in itertools.product("12", layers)]
    for text in ("blocks.8", CHILDREN, PARENT_AVERAGE, "dots: each parent", "recomputed batch-norm statistics"):
        assert text in drawn
    apart = tables_at_two_alphas("representation", frames)[1]
    assert set(column(apart, "alpha")) == {"0.25", "0.75"}
