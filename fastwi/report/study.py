"""What a study is: a question for a finished sweep, the tables that it writes, and what a reader sees of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars

from fastwi.analysis.columns import PAIR_COLUMNS, Column, Columns
from fastwi.analysis.measuring import SPLITS, Bench
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Progress
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.report.estimates import SAME
from fastwi.report.summary import Table

Frames = Mapping[str, polars.DataFrame]
Row = dict[str, Any]
Found = Mapping[str, list[Row] | polars.DataFrame]

DECIDING = "deciding"
"""Where a study's manifest has what decided the sweep's results: `fastwi.config.write.deciding`."""
INPUTS = "inputs"
"""Where a manifest has `PlannedSweep.contents`: datasets, weights, networks' sources and so on, a digest each."""
_STATISTICS = Column("", "batch-norm statistics: averaged as the weights are, own, or recomputed", polars.String)
AVERAGE_COLUMNS = {**PAIR_COLUMNS, "batch_norm": _STATISTICS}
"""What rows about an average begin with, after the sweep's axes beside k and s."""
LINE_COLUMNS = {name: column for name, column in AVERAGE_COLUMNS.items() if name != "alpha"}
"""The same about two children whatever their average's alpha is."""
MEASURED_COLUMNS = {
    f"{split}_{name}": Column(unit, about.format(split))
    for split in SPLITS
    for name, unit, about in (
        ("loss_nats", "nats", "mean cross-entropy on the {} images; null where not finite"),
        ("error_%", "%", "share of {} images classified wrongly; null where not defined"),
    )
}


def shown_once(frames: Frames) -> tuple[dict[str, polars.DataFrame], str]:
    """The frames as shown, without rows of recomputed statistics that repeat the others; and a note on that."""
    kept = dict(frames)
    for name, frame in frames.items():
        if "batch_norm" in frame.columns:
            again = polars.col("batch_norm") == RECOMPUTED
            others = frame.filter(~again)
            keys = [column for column in frame.columns if column != "batch_norm"]
            new = frame.filter(again).join(others, on=keys, how="anti", nulls_equal=True)
            kept[name] = frame if new.height or not others.height else others
    return kept, SAME if any(kept[name].height < frame.height for name, frame in frames.items()) else ""


@dataclass(frozen=True)
class Study:
    """A study. Files of `fastwi/studies` have one each, by the name `STUDY`; the file's name is the study's.

    question: in one line. options: those of the section `analysis` that change the result. columns: what `measure`
    gives, by the name of the frame; the sweep's axes beside k and s stand before. find: measures on the bench, and
    gives the rows of each frame, or the frame; trains nothing, and raises UserError where the sweep lacks what it
    needs. tables, draw (a Matplotlib figure): from the frames of this run or an earlier one. renew: frames of an
    earlier run as this version makes them, where that needs no states.
    """

    question: str
    options: tuple[str, ...]
    columns: Mapping[str, Columns]
    find: Callable[[Bench], Found]
    tables: Callable[[Frames], list[Table]]
    draw: Callable[[Frames, str], Any]
    renew: Callable[[Frames], Frames] = lambda frames: frames

    def measure(
        self, opened: OpenedSweep, options: AnalysisOptions, progress: Progress
    ) -> dict[str, polars.DataFrame]:
        """The frames, by name."""
        bench = Bench(opened, options, progress)
        frames = dict[str, polars.DataFrame]()
        for name, found in self.find(bench).items():
            frames[name] = bench.frame(self.columns[name], found) if isinstance(found, list) else found
        return frames

    def chosen(self, options: AnalysisOptions) -> dict[str, Any]:
        """The options that change the study's result, with their values."""
        return {name: getattr(options, name) for name in self.options}
