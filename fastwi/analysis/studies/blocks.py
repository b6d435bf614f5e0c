"""Which block of layers the barrier, or the gain, of the whole line comes from.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: one block of
A is replaced by the mean of A's and B's, alpha = 0.5, the rest stays A's; and with A and B exchanged.
"""

import itertools
from typing import TYPE_CHECKING, Any

import polars

from fastwi.analysis.studies.pairs import LINE_COLUMNS, SPLITS, Bench, Tell, frame_of, pairs_of
from fastwi.config.analysis import AnalysisOptions

if TYPE_CHECKING:
    from fastwi.analysis.studies.opened import OpenedSweep
    from fastwi.population import Layout

WHOLE = "all"
_MIDDLE = 0.5

_CHANGES = {
    f"{split}_{name}": about
    for split in SPLITS
    for name, about in {
        "loss_change_nats": ("nats", f"{split} loss less that of the network whose rest it is, same statistics"),
        "error_change_points": ("points", f"{split} error less that of the network whose rest it is, likewise"),
    }.items()
}
COLUMNS = LINE_COLUMNS | _CHANGES | {
    "rest": ("", "the child that all other blocks are of: A, the pair's first, or B"),
    "block": ("", f"the block that is half A's and half B's, by its name in the network; {WHOLE}: every one"),
    "block_number": ("", f"place of the block in the network, from 0; -1: {WHOLE}"),
}  # fmt: skip
"""Unit and meaning of the frame's columns."""


def blocks(opened: "OpenedSweep", options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Move one block of A half-way to B, for every block of each chosen pair, and of B half-way to A.

    Frame `blocks`, after the columns that name a pair: one row a treatment, direction and block: loss (nats) and
    error (%) on train and on test, and their change (nats, points) from the network that the rest is of, under the
    same treatment of batch norm. A block's averaged statistics move with it. The block "all" is the plain average.

    Raises UserError where the sweep has no pairs, or its states are not in the store.
    """
    from fastwi.analysis.blocks import evaluate_blocks
    from fastwi.analysis.line import evaluate_line

    pairs = pairs_of(opened, options)
    opened.require(key for pair in pairs for key in pair.place.ends)
    bench = Bench(opened, options, tell)
    ends_and_mean = 3
    bench.expect(
        (pair.config, ends_and_mean + 2 * len(block_groups(opened.resources.layout(pair.config)))) for pair in pairs
    )
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        measuring = bench.of(pair.config)
        population = opened.states(pair.place.ends)
        how: dict[str, Any] = {"treatments": options.treatments, "recomputation": measuring.recomputation}
        line = evaluate_line(measuring.evaluator, population, measuring.splits, [0.0, _MIDDLE, 1.0], **how)
        found = evaluate_blocks(
            measuring.evaluator,
            population,
            measuring.splits,
            [_MIDDLE],
            groups=block_groups(population.layout),
            **how,
        )
        for treatment in options.treatments:
            for d, (rest, end) in enumerate((("A", 0), ("B", 2))):
                own = line.columns(treatment, end)
                networks = [(WHOLE, -1, line.columns(treatment, 1))]
                networks += [(name, g, found.columns(treatment, d, g, 0)) for g, name in enumerate(found.blocks)]
                for name, number, measured in networks:
                    row = {"batch_norm": treatment, "rest": rest, "block": name, "block_number": number}
                    rows.append({**pair.head, **row, **measured, **_changes(measured, own)})
    bench.finish()
    types: dict[str, Any] = {"batch_norm": polars.String, "rest": polars.String, "block": polars.String}
    types["block_number"] = polars.Int64
    types |= {f"{split}_{name}": polars.Float64 for split in SPLITS for name in ("loss_nats", "error_%")}
    types |= dict.fromkeys(_CHANGES, polars.Float64)
    return {"blocks": frame_of(opened.planned.spec, rows, types)}


def block_groups(layout: "Layout") -> dict[str, list[str]]:
    """The blocks of an architecture by name, in order: its top-level parts, and of a numbered list each element.

    So the residual blocks `blocks.0`, `blocks.1` ... of a ResNet are one each.
    """
    names: dict[str, list[str]] = {}
    for span in layout.parameters:
        first, *rest = span.name.split(".")
        numbers = list(itertools.takewhile(str.isdigit, rest))
        name = ".".join([first, *numbers])
        names[name] = [name]
    return names


def _changes(measured: dict[str, float | None], own: dict[str, float | None]) -> dict[str, float | None]:
    """Loss and error less the unchanged network's; None where one of them is not defined."""
    found: dict[str, float | None] = {}
    for split in SPLITS:
        for name, change in (("loss_nats", "loss_change_nats"), ("error_%", "error_change_points")):
            new, old = measured[f"{split}_{name}"], own[f"{split}_{name}"]
            found[f"{split}_{change}"] = None if new is None or old is None else new - old
    return found
