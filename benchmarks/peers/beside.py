"""A run of fastwi beside the control (`benchmarks.peers.control`): a table, and a figure of both.

python -m benchmarks.peers.beside results/resnet20_160_epochs/metrics.jsonl control/epochs.jsonl --out control.png
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.output import print_table

LAST = 10  # epochs whose mean the table has at its end
_COLOURS = {"fastwi": "#1f5fa8", "control": "#b3261e"}
_METRICS = {"train_loss": "train loss (nats)", "test_accuracy": "test accuracy (%)"}

Curve = Mapping[int, Mapping[str, float]]
"""By epoch, `train_loss` and `test_accuracy`."""


def read_run(metrics: Path) -> Curve:
    """The parent of a run, with its own batch-norm statistics."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {
        row["epoch"]: {"train_loss": row["train_loss"], "test_accuracy": row["test_accuracy_%"]}
        for row in rows
        if row["network"] == "parent" and row["batch_norm"] == "own" and row["epoch"]
    }


def read_control(epochs: Path) -> Curve:
    """The lines that the control wrote."""
    return {row["epoch"]: row for row in map(json.loads, epochs.read_text().splitlines())}


def table(curves: Mapping[str, Curve], every: int = 20) -> list[dict[str, Any]]:
    """Both at each `every` epochs, and the means of the last `LAST` that both have."""
    both = sorted(set.intersection(*map(set, curves.values())))
    last = both[-LAST:]
    spans = {str(epoch): [epoch] for epoch in both if epoch % every == 0}
    spans[f"mean of {last[0]} to {last[-1]}"] = last
    return [
        {"epoch": name}
        | {
            f"{metric} {who}": fmean(curve[epoch][metric] for epoch in epochs)
            for metric in _METRICS
            for who, curve in curves.items()
        }
        for name, epochs in spans.items()
    ]


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """A panel a metric."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (metric, label) in zip(figure.subplots(1, 2), _METRICS.items(), strict=True):
        for who, curve in curves.items():
            axis.plot(list(curve), [row[metric] for row in curve.values()], color=_COLOURS[who], label=who, lw=1.2)
        axis.set_xlabel("epochs")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="metrics.jsonl of the run")
    parser.add_argument("control", type=Path, help="epochs.jsonl of the control")
    parser.add_argument("--out", type=Path, required=True, help="the figure")
    given = parser.parse_args(arguments)
    curves = {"fastwi": read_run(given.run), "control": read_control(given.control)}
    print_table("one network each", table(curves))
    draw(curves, given.out)


if __name__ == "__main__":
    main()
