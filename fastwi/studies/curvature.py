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
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, chosen_pairs
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import (
    cell_heading,
    cell_names,
    draw_bars,
    estimate_of,
    estimate_table,
    first_cells,
    groups,
    set_title,
    spread_text,
    style,
    titled,
    verdict_cells,
)
from fastwi.report.study import AVERAGE_COLUMNS, Frames, Study
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


_Key = tuple[str, Any]
"""A state, and what decides its recomputed statistics; None: its own statistics."""


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Measure the parent, the children and the average of each chosen pair, and the average as it trains on.

    Of states after further epochs those that are stored. Recomputed statistics are those of the interpolation epoch,
    for all networks. A network that several pairs share is measured once.
    """
    bench = Bench(opened, options)
    pairs = chosen_pairs(opened, options)
    lost = opened.lost()
    opened.require(state for pair in pairs for state in (pair.place.clone, *pair.place.ends))
    networks = {pair: list(_networks(opened, bench, pair, options, lost)) for pair in pairs}
    vectors, probes = options.curvature_vectors, options.curvature_probes

    def images_of(pair: Pair) -> int:
        count = len(opened.resident_splits(pair.config)[0])
        return min(options.curvature_images or count, count)

    costs = {
        key: analysis.curvature_cost(images_of(pair), vectors, probes) for pair in pairs for _, key in networks[pair]
    }
    total = sum(costs.values())
    done = 0

    def passed(images: int) -> None:
        nonlocal done
        done = min(done + images, total)
        progress(done, total)

    passed(0)
    found = dict[_Key, "analysis.Curvature"]()
    rows: dict[str, list[dict[str, Any]]] = {"networks": [], "spectrum": []}
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
                    radius=options.curvature_radius, report=passed,
                )  # fmt: skip
            here = found[key]
            names = {**pair.columns(), **named}
            rows["networks"].append({**names, **here.row()})
            for number, values in enumerate(zip(here.eigenvalues_V, here.residuals_V, strict=True), 1):
                value, residual = map(analysis.finite, values)
                rows["spectrum"].append({**names, "number": number, "eigenvalue": value, "residual": residual})
    progress(total, total)  # Lanczos may end early
    return opened.frames(COLUMNS, **rows)


def _networks(
    opened: OpenedSweep, bench: Bench, pair: Pair, options: AnalysisOptions, lost: set[str]
) -> Iterator[tuple[dict[str, Any], _Key]]:
    """The pair's networks in order, under each treatment: columns that name each, and its key.

    Without those that diverged; of those after further epochs, the ones that are stored.
    """
    place = pair.place
    treatments: list[tuple[str, Any]] = [(OWN, None)]
    if RECOMPUTED in options.treatments:
        on = bench.recomputation(pair)
        # Without batch norm both are the same network, which is measured once.
        of_images = (on.noise, on.images, on.epoch) if bench.evaluator(pair.config).has_statistics else None
        treatments.append((RECOMPUTED, of_images))
    for batch_norm, how in treatments:
        yield {"network": "parent", "batch_norm": batch_norm}, (place.clone, how)
        for number, state in zip(pair.numbers, place.ends, strict=True):
            yield {"network": "child", "child": number, "batch_norm": batch_norm}, (state, how)
        averages = (place.average, *place.after)
        for epochs, state in zip(place.further(averages), averages, strict=True):
            if state not in lost and (not epochs or opened.has([state])):
                yield {"network": "average", "epochs_after": epochs, "batch_norm": batch_norm}, (state, how)


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
    found = [
        estimate_table(frame, sentence(text), names, ["label"], quantity, digits, absent="not stored")
        for quantity, (text, digits) in QUANTITIES.items()
    ]
    body, notes, most = list[list[str]](), list[str](), 0
    for quantity in _FLATTER:
        for what, rows in _contrasts(frames["networks"], quantity):
            for (treatment,), here in groups(rows, ["batch_norm"]):
                estimate = estimate_of(here, "contrast")
                if estimate is not None:
                    body.append([QUANTITIES[quantity][0], what, treatment, *verdict_cells(estimate)])
                    notes.append(estimate.note)
                    most = max(most, estimate.n_parents)
    title = "Log of the second network's value over the first's, paired, all cells together [95 %]"
    columns = ("quantity", "networks", "batch norm", "log ratio", "parents", "pairs", "the first is flatter")
    return [*found, titled(title, columns, body, most, notes)]


def draw(frames: Frames, title: str) -> Any:
    """Draw a bar for each network, a panel a quantity and a row of panels a cell; of many cells the first ones."""
    from matplotlib.figure import Figure

    frame = _labelled(frames["networks"])
    names = cell_names(frame, alpha=True)
    cells, part = first_cells(frame, names, 6)
    figure = Figure(figsize=(3.0 * len(QUANTITIES), 2.9 * len(cells) + 0.9), layout="constrained")
    axes = figure.subplots(len(cells), len(QUANTITIES), squeeze=False)
    found = []
    for row, (values, rows) in enumerate(cells):
        for axis, (quantity, (text, _)) in zip(axes[row], QUANTITIES.items(), strict=True):
            found += draw_bars(axis, rows, quantity, "label", "{} batch-norm statistics")
            style(axis, "", text, cell_heading(names, values, rows))
            axis.tick_params(axis="x", labelrotation=40)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    images = ", ".join(map(value_text, sorted(set(frame["images"]))))
    set_title(
        figure, f"Where the average sits{part}", f"{title}; {images} training images; {spread_text(found)}", size=10
    )
    return figure


QUESTION = "where the average sits: the Hessian's eigenvalues and trace, sharpness, gradient and its noise"
OPTIONS = (
    "curvature_images", "curvature_vectors", "curvature_probes", "curvature_radius", "treatments", "cells", "pairs",
)  # fmt: skip
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
