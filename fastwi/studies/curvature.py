"""Where the average sits: curvature, sharpness and gradient of the loss, from the parent to the average trained on.

All on the same training images without augmentation, in evaluation mode, in float32; `fastwi.analysis.curvature` has
definitions and sources. A flatter network has smaller values.
"""

from collections.abc import Iterator
from typing import Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.config.sweep import RECOMPUTED
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import (
    cell_names,
    cells_of,
    estimate_at_interpolation,
    estimate_tables,
    groups,
    verdict_table,
)
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, sentence, value_text

QUANTITIES = {
    "largest_eigenvalue": ("largest eigenvalue of the Hessian (nats)", 2),
    "trace": ("trace of the Hessian (nats)", 1),
    "sharpness_nats": ("sharpness (nats)", 4),
    "gradient_norm": ("gradient norm (nats)", 3),
    "noise_scale_images": ("gradient noise scale (images)", 0),
    "loss_nats": ("training loss (nats)", 4),
}
"""Columns of `networks` that have tables and panels: in words, and their digits."""
_FLATTER = ("largest_eigenvalue", "trace", "sharpness_nats", "gradient_norm")

_NETWORK = {
    **PAIR_COLUMNS,
    "network": Column("", "parent, child or average", polars.String),
    "child": Column("", "number of the child, from 1 within its parent and k", polars.Int64),
    "epochs_after": Column("epochs", "epochs that the average trained on; null: not an average", polars.Int64),
    "batch_norm": AVERAGE_COLUMNS["batch_norm"],
}
COLUMNS = {
    "networks": {
        **_NETWORK,
        "images": Column("images", "training images that were measured on", polars.Int64),
        "loss_nats": Column("nats", "mean cross-entropy on them"),
        "loss_error": Column("nats", "its standard error over batches"),
        "largest_eigenvalue": Column("nats", "largest eigenvalue of the Hessian, by Lanczos"),
        "largest_eigenvalue_error": Column("nats", "its residual: an eigenvalue is that near"),
        "smallest_eigenvalue": Column("nats", "smallest eigenvalue that Lanczos found"),
        "smallest_eigenvalue_error": Column("nats", "its residual"),
        "trace": Column("nats", "trace of the Hessian, by Hutchinson's estimator"),
        "trace_error": Column("nats", "its standard error over probes"),
        "gradient_norm": Column("nats", "L2 norm of the gradient"),
        "gradient_norm_error": Column("nats", "its jackknife error over batches"),
        "noise_scale_images": Column(
            "images", "gradient noise scale; null where the gradient is not above its noise"
        ),
        "noise_scale_error": Column("images", "its jackknife error over batches"),
        "sharpness_nats": Column("nats", "rise of the loss by a step of curvature_radius along the gradient"),
        "sharpness_error": Column("nats", "its standard error over batches"),
    },
    "spectrum": {
        **_NETWORK,
        "number": Column("", "place of the eigenvalue, from 1: the largest", polars.Int64),
        "eigenvalue": Column("nats", "value that Lanczos found"),
        "residual": Column("nats", "an eigenvalue of the Hessian is that near"),
    },
}


_Key = tuple[str, Any, Any]
"""A state; what decides its recomputed statistics, or None: its own; and what it is measured on.

Trained states are of one dataset and augmentation. One that was never trained serves all of them.
"""


def measure(bench: Bench) -> Found:
    """Measure the parent, the children and the average of each chosen pair, and the average as it trains on.

    Of states after further epochs those that are stored. Recomputed statistics are those of the interpolation epoch,
    for all networks. A network that several pairs share is measured once.
    """
    opened, options, pairs = bench.opened, bench.options, bench.pairs(stored=True)
    lost = opened.lost()
    networks = {pair: list(_networks(bench, pair, lost)) for pair in pairs}
    vectors, probes = options.curvature_vectors, options.curvature_probes

    def images_of(pair: Pair) -> int:
        count = len(opened.resident_splits(pair.config)[0])
        return min(options.curvature_images or count, count)

    costs = {
        key: analysis.curvature_cost(images_of(pair), vectors, probes) for pair in pairs for _, key in networks[pair]
    }
    total = sum(costs.values())
    bench.begin(total)
    found = dict[_Key, "analysis.Curvature"]()
    measured, spectrum = list[Row](), list[Row]()
    for pair in pairs:
        evaluator = bench.evaluator(pair.config)
        train, _ = opened.resident_splits(pair.config)
        for named, key in networks[pair]:
            if key not in found:
                network = opened.states([key[0]])
                if key[1] is not None:
                    network = evaluator.recompute(network, bench.recomputation(pair))
                (found[key],) = analysis.measure_curvature(
                    evaluator, network, train, images=options.curvature_images, vectors=vectors, probes=probes,
                    radius=options.curvature_radius, report=bench.passed,
                )  # fmt: skip
            here = found[key]
            names = {**pair.columns(), **named}
            measured.append({**names, **here.row()})
            for number, values in enumerate(zip(here.eigenvalues_V, here.residuals_V, strict=True), 1):
                value, residual = map(analysis.finite, values)
                spectrum.append({**names, "number": number, "eigenvalue": value, "residual": residual})
    bench.passed(total)  # Lanczos may end early
    return {"networks": measured, "spectrum": spectrum}


def _networks(bench: Bench, pair: Pair, lost: set[str]) -> Iterator[tuple[Row, _Key]]:
    """The pair's networks in order, under each treatment: columns that name each, and its key.

    Without those that diverged; of those after further epochs, the ones that are stored.
    """
    place = pair.place
    treatments: list[tuple[str, Any]] = [(OWN, None)]
    if RECOMPUTED in bench.options.treatments:
        drawn = bench.recomputation(pair)
        # Without batch norm both are the same network, which is measured once.
        of_images = (drawn.noise, drawn.images, drawn.epoch) if bench.evaluator(pair.config).has_statistics else None
        treatments.append((RECOMPUTED, of_images))
    on = (pair.config.data, pair.config.augment, pair.config.optimizer.batch_size)
    for batch_norm, how in treatments:
        yield {"network": "parent", "batch_norm": batch_norm}, (place.clone, how, on)
        for number, state in zip(pair.numbers, place.ends, strict=True):
            yield {"network": "child", "child": number, "batch_norm": batch_norm}, (state, how, on)
        averages = (place.average, *place.after)
        for epochs, state in zip(place.further(averages), averages, strict=True):
            if state not in lost and (not epochs or bench.opened.has([state])):
                named = {"network": "average", "epochs_after": epochs, "batch_norm": batch_norm}
                yield named, (state, how, on)


def _labelled(frame: polars.DataFrame) -> polars.DataFrame:
    """With each network in words as `label`, in their order: parent, children, average, average + 1 epoch ..."""
    column = polars.col
    child, after = column("network") == "child", column("epochs_after")
    label = polars.when(child).then(polars.lit("children"))
    later = label.when(after > 0).then(polars.format("average + {}", after))
    order = polars.when(child).then(-1).otherwise(after.fill_null(-2))
    return frame.with_columns(label=later.otherwise(column("network")), order=order).sort(
        "order", maintain_order=True
    )


def _contrasts(frame: polars.DataFrame, quantity: str) -> Iterator[tuple[str, polars.DataFrame]]:
    """Contrasts within pairs, in words, and their column `contrast`: above 0 where the first network is flatter.

    It is the log of the second network's value over the first's, of children the mean of their logs. Values that are
    not above 0, as a trace may be, are left out.
    """
    keys = [*cell_names(frame, alpha=True), "parent_seed", "pair", "batch_norm"]
    log = polars.col(quantity).log()
    values = {
        label: rows.group_by(keys, maintain_order=True).agg(log.mean())
        for (label,), rows in groups(_labelled(frame.filter(polars.col(quantity) > 0)), ["label"])
    }
    pairs = [("average", "parent"), ("average", "children")]
    pairs += [(label, "average") for label in values if label.startswith("average + ")][-1:]
    contrast = polars.col(quantity) - polars.col(f"{quantity}_first")
    for first, second in pairs:
        if first in values and second in values:
            both = values[second].join(
                values[first], on=keys, suffix="_first", nulls_equal=True, maintain_order="left"
            )
            yield f"{first} against {second}", both.with_columns(contrast=contrast)


def tables(frames: Frames) -> list[Table]:
    """A table a quantity, with a row a cell and a column a network; and whether the average is flatter."""
    frame = _labelled(frames["networks"])
    names = [*cell_names(frame, alpha=True), "batch_norm"]
    titles = {quantity: (sentence(text), digits) for quantity, (text, digits) in QUANTITIES.items()}
    found = [
        ((QUANTITIES[quantity][0], what, treatment), estimate_at_interpolation(here, "contrast"))
        for quantity in _FLATTER
        for what, rows in _contrasts(frames["networks"], quantity)
        for (treatment,), here in groups(rows, ["batch_norm"])
    ]
    title = "Log of the second network's value over the first's, paired, all cells together [95 %]"
    columns = ("quantity", "networks", "batch norm", "log ratio", "parents", "pairs", "the first is flatter")
    by_cell = estimate_tables(frame, titles, names, ["label"], absent="not stored")
    return [*by_cell, verdict_table(title, columns, found)]


def draw(frames: Frames, title: str) -> Any:
    """Draw a bar for each network, a panel a quantity and a row of panels a cell; of many cells the first ones."""
    frame = _labelled(frames["networks"])
    cells, part = cells_of(frame, alpha=True, most=6)
    sheet = Sheet(len(cells), len(QUANTITIES), (3.0, 2.9), (0, 0.9))
    for row, cell in zip(sheet.axes, cells, strict=True):
        for axis, (quantity, (text, _)) in zip(row, QUANTITIES.items(), strict=True):
            sheet.bars(axis, cell.rows, quantity, "label")
            style(axis, "", text, cell.heading)
            axis.tick_params(axis="x", labelrotation=40)
    sheet.legend(ncols=2)
    images = ", ".join(map(value_text, sorted(set(frame["images"]))))
    return sheet.titled(f"Where the average sits{part}", title, f"{images} training images", size=10)


QUESTION = "where the average sits: the Hessian's eigenvalues and trace, sharpness, gradient and its noise"
OPTIONS = (
    "curvature_images", "curvature_vectors", "curvature_probes", "curvature_radius", "treatments", "cells", "pairs",
)  # fmt: skip
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
