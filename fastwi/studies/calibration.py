"""Whether the average is as sure as it is right: calibration of parent, children, average and ensemble.

On the test images, and on demand on corrupted ones (`fastwi.data.corruptions`), the same for all networks. The
ensemble is that of the children: the mean of their probabilities. `fastwi.analysis.calibration` has the measures.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.config.sweep import RECOMPUTED
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import (
    cell_names,
    cells_of,
    estimate_at_interpolation,
    estimate_table,
    groups,
    verdict_table,
)
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, sentence

if TYPE_CHECKING:
    from fastwi.data.resident import ResidentDataset

CLEAN = "test"

_ECE = "expected calibration error"
MEASURES = {
    "error_%": Column("%", "share of the images classified wrongly"),
    "loss_nats": Column("nats", "mean cross-entropy"),
    "ece_%": Column("%", f"{_ECE}: 15 bins of equal width"),
    "adaptive_ece_%": Column("%", f"{_ECE}: 15 bins of equally many images"),
    "brier": Column("1", "Brier score: mean squared distance from the one-hot label, 0 to 2"),
    "temperature": Column("1", "temperature that fits best; above 1: too sure"),
    "scaled_loss_nats": Column("nats", "loss at the temperature that fits the other half of the images"),
}
"""The fields of `fastwi.analysis.Calibration` as columns, in their order. Lower is better but for the temperature."""

COLUMNS = {
    "calibration": {
        **AVERAGE_COLUMNS,
        "images": Column("", f"test images: {CLEAN}, or the name of their corruption", polars.String),
        "severity": Column("", "strength of the corruption, 1 to 5; 0: none", polars.Int64),
        "network": Column("", "parent, child, average, or ensemble of the children", polars.String),
        "child": Column("", "number of the child, from 1 within its parent and k", polars.Int64),
        **MEASURES,
    }
}


def measure(bench: Bench) -> Found:
    """Measure parent, children, average and ensemble of each chosen pair, on all images under each treatment.

    Corrupted images are in memory together: 31 MB for 10,000 of 32 x 32 for each corruption and severity.
    """
    options, pairs = bench.options, bench.pairs(stored=True)
    kinds = [(CLEAN, 0), *itertools.product(options.corruptions, sorted(options.severities))]
    made: dict[Any, Any] = {}
    bench.begin(len(pairs) * len(kinds) * (1 + (RECOMPUTED in options.treatments)))
    rows = list[Row]()
    for pair in pairs:
        evaluator = bench.evaluator(pair.config)
        count = len(pair.place.ends)
        children = [("child", number) for number in pair.numbers]
        named = [*children, ("ensemble", None), ("average", None), ("parent", None)]
        networks = bench.opened.states([*pair.place.ends, pair.place.average, pair.place.clone])
        for treatment, population in bench.treated(pair, networks):
            for name, severity in kinds:
                dataset = _images(bench, pair, name, severity, made)
                found = analysis.calibration_scores(evaluator, population[:count], dataset, ensemble=True)
                found += analysis.calibration_scores(evaluator, population[count:], dataset)
                for (network, child), scores in zip(named, found, strict=True):
                    what = {"images": name, "severity": severity, "network": network, "child": child}
                    values = dict(zip(MEASURES, map(analysis.finite, scores), strict=True))
                    rows.append({**pair.columns(), "batch_norm": treatment, **what, **values})
                bench.passed()
    return {"calibration": rows}


def _images(bench: Bench, pair: Pair, name: str, severity: int, made: dict[Any, Any]) -> "ResidentDataset":
    """The test images that the options ask for, on the device; corrupted ones are made once, and kept in `made`."""
    import torch

    from fastwi.data.corruptions import corrupted

    test, _ = bench.part(pair.config, "test")
    if not severity:
        return test
    key = (pair.config.data, name, severity)
    if key not in made:
        made[key] = torch.from_numpy(corrupted(test.images_NHWC.cpu().numpy(), name, severity))
    return replace(test, images_NHWC=made[key].to(test.images_NHWC.device))


_BETTER = {
    "error_%": "error (%)",
    "loss_nats": "loss (nats)",
    "ece_%": "calibration error (%)",
    "adaptive_ece_%": "calibration error, adaptive bins (%)",
    "brier": "Brier score",
    "scaled_loss_nats": "loss after temperature scaling (nats)",
}
"""Measures of which lower is better, in words."""
_OVER = {"child": "the children's mean", "ensemble": "their ensemble"}
_WITH_CORRUPTED = ("error_%", "ece_%")
_ALL = "all corruptions"


def improvements(frame: polars.DataFrame, over: str) -> polars.DataFrame:
    """By how much each measure of the average is below that of the networks `over` (of the children: their mean).

    A row for each pair, treatment and kind of images, the mean over severities; after those of the single corruptions
    come rows with the mean over all of them. Null where a measure of one of the networks is not defined.
    """
    keys = frame.columns[: frame.columns.index("images")]
    of = polars.col("network")
    # NaN, not null, which means would leave out on one side.
    measures = [polars.col(name).fill_null(float("nan")) for name in _BETTER]
    lower = [m.filter(of == over).mean() - m.filter(of == "average").first() for m in measures]
    each = frame.group_by([*keys, "images", "severity"], maintain_order=True).agg(lower)
    corrupted = each.filter(polars.col("severity") > 0).with_columns(images=polars.lit(_ALL))
    return (
        polars.concat([each, corrupted])
        .group_by([*keys, "images"], maintain_order=True)
        .agg(polars.col(list(_BETTER)).mean())
        .fill_nan(None)
    )


def tables(frames: Frames) -> list[Table]:
    """What averaging improves, with verdicts; on demand on corrupted images; and each measure by cell."""
    frame = frames["calibration"]
    clean = frame.filter(images=CLEAN)
    found = [_improved("on the test images", clean, list(_BETTER))]
    if clean.height < frame.height:
        found.append(_improved("on test images, corrupted too, means over severities", frame, _WITH_CORRUPTED))
    for name, column in MEASURES.items():
        title = f"{sentence(column.help)}; in {column.unit}".removesuffix("; in 1")
        by = ["network", "batch_norm"]
        found.append(estimate_table(clean, title, cell_names(clean, alpha=True), by, name, 3))
    return found


def _improved(where: str, frame: polars.DataFrame, measures: Sequence[str]) -> Table:
    """The paired improvements by averaging over all cells, with the verdict on 'the average is better'."""
    found = [
        ((_BETTER[name], words, images, treatment), estimate_at_interpolation(rows, name))
        for over, words in _OVER.items()
        for (treatment, images), rows in groups(improvements(frame, over), ["batch_norm", "images"])
        for name in measures
    ]
    columns = ("measure", "average against", "images", "batch norm", "lower by", "parents", "pairs", "average better")
    return verdict_table(f"What the average is lower by {where}, all cells together [95 %]", columns, found, 3)


_PANELS = {
    (True, "error_%"): "test error (%)",
    (True, "loss_nats"): "test loss (nats)",
    (True, "ece_%"): "calibration error (%)",
    (True, "brier"): "Brier score",
    (False, "error_%"): "error, corrupted images (%)",
    (False, "ece_%"): "calibration error, corrupted images (%)",
}


def draw(frames: Frames, title: str) -> Any:
    """Draw a bar for each kind of network: error, loss, ECE and Brier score, a row of panels a cell.

    Of many cells the first ones are drawn, and the title says so. Corrupted images: the mean over all of them.
    """
    frame = frames["calibration"]
    cells, part = cells_of(frame, alpha=True, most=8)
    panels = {key: label for key, label in _PANELS.items() if key[0] or frame["severity"].max()}
    sheet = Sheet(len(cells), len(panels), (2.7, 2.6), (0.4, 1.0))
    for row, cell in zip(sheet.axes, cells, strict=True):
        for axis, ((clean, column), label) in zip(row, panels.items(), strict=True):
            shown = cell.rows.filter((polars.col("images") == CLEAN) == clean)
            sheet.bars(axis, shown, column, "network")
            style(axis, "", label, cell.heading if axis is row[0] else "")
    sheet.legend(ncols=2)
    return sheet.titled(f"Calibration of the networks{part}", title, size=10)


QUESTION = "whether averaging improves calibration, and accuracy on corrupted images"
OPTIONS = ("test_images", "corruptions", "severities", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
