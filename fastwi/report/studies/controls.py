"""The average against its controls: a table of paired effects, and a forest plot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars

from fastwi.analysis.statistics import Estimate, mean_estimate, verdict, verdict_text
from fastwi.analysis.studies.controls import AFTER_AXES
from fastwi.report.heatmap import save_figure
from fastwi.report.studies.cells import cell_names, draw_spread, groups, shown, titled
from fastwi.report.summary import Table
from fastwi.report.sweep import value_text

_WORDS = {
    "mean_child": "the children's mean",
    "best_child": "the best child",
    "ensemble": "the children's ensemble",
    "child_longer": "one child trained as long as all together",
    "lawa": "LAWA of one child at equal cost",
    "ema": "EMA of one child at equal cost",
    "children_on": "the children trained on, after the average is trained on as long",
    "dropped_rate": "children with a dropped learning rate",
    "alpha": "the average at another alpha",
}
_BY_CELL = ("mean_child", "best_child", "ensemble", "child_longer", "lawa", "ema")
_HINDSIGHT = "best number of epochs in hindsight"
_LAWA = ("last 2 epochs", "its second half", "all its epochs")
_OF_ALL_CELLS = tuple(f"{_WORDS['lawa']}, {text}" for text in _LAWA)
_COLOURS = {"own": "tab:blue", "recomputed": "tab:orange"}


@dataclass(frozen=True)
class Effect:
    """A control under one treatment, over all cells (`cell` is empty) or in one: average less control, in points."""

    label: str
    batch_norm: str
    cell: tuple[str, ...]
    estimate: Estimate


def effects(frame: polars.DataFrame, by_cell: bool = False) -> list[Effect]:
    """The paired effect of each control with its interval over parents, over all cells together or in each.

    Averages along a trajectory are shown over its last 2 epochs, its second half, all of it, and over the number of
    epochs that is best for the pair in hindsight, which favours the control.
    """
    found = []
    names = cell_names(frame) if by_cell else []
    for label, rows in _controls(frame):
        for values, chosen in groups(rows, [*names, "batch_norm"]):
            estimate = mean_estimate(chosen["effect_points"].to_numpy(), chosen["parent_seed"].to_list())
            found.append(Effect(label, values[-1], tuple(map(value_text, values[:-1])), estimate))
    return found


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """The effects over all cells with the verdict on 'the average is better', some by cell, and what is absent."""
    frame = frames["controls"]
    title = "The average's test accuracy less the control's, paired, in points [95 %]"
    body, notes, most = [], list[str](), 0
    for effect in effects(frame):
        estimate = effect.estimate
        notes.append(estimate.note)
        most = max(most, estimate.n_parents)
        body.append([
            effect.label, effect.batch_norm, shown(estimate, estimate.n_parents), str(estimate.n_parents),
            str(estimate.n_pairs), verdict_text(verdict(estimate), estimate.n_parents),
        ])  # fmt: skip
    columns = ("average against", "batch norm", "effect", "parents", "pairs", "average is better")
    found = [titled(f"{title}, all cells together", columns, body, most, notes), _by_cell(frame, title)]
    absent = frames["absent"]
    if absent.height:
        rows = []
        for name, without, count, line in absent.rows():
            told = "not in this sweep" if without == count else f"not for {without} of {count} pairs"
            rows.append((_WORDS.get(name, name), told, line))
        found.append(Table("Controls that are not in this sweep", ("control", "", "what adds it"), tuple(rows)))
    return found


def _by_cell(frame: polars.DataFrame, title: str) -> Table:
    """One row a cell and treatment, one column for each control that needs no number of epochs."""
    chosen = frame.filter(polars.col("control").is_in(_BY_CELL))
    every = effects(chosen, by_cell=True)
    labels = list(dict.fromkeys(effect.label for effect in every if effect.label not in _OF_ALL_CELLS))
    rows: dict[tuple[str, ...], dict[str, Estimate]] = {}
    for effect in every:
        rows.setdefault((*effect.cell, effect.batch_norm), {})[effect.label] = effect.estimate
    body, most = [], 0
    for names, estimates in rows.items():
        parents = max(estimate.n_parents for estimate in estimates.values())
        pairs = max(estimate.n_pairs for estimate in estimates.values())
        most = max(most, parents)
        cells = [shown(estimates[label], parents) if label in estimates else "not in this sweep" for label in labels]
        body.append([*names, str(parents), str(pairs), *cells])
    columns = (*cell_names(frame), "batch norm", "parents", "pairs", *labels)
    return titled(f"{title}, by cell", columns, body, most)


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw a forest plot: the effect of each control with its interval over parents, all cells together.

    Writes PNG (`path`), PDF and SVG; raises UserError where that fails.
    """
    from matplotlib.figure import Figure

    found = effects(frames["controls"])
    labels = list(dict.fromkeys(effect.label for effect in found))
    figure = Figure(figsize=(9.5, 0.36 * len(labels) + 1.9), layout="constrained")
    axis = figure.subplots()
    for treatment, offset in (("own", -0.14), ("recomputed", 0.14)):
        here = [effect for effect in found if effect.batch_norm == treatment]
        for effect in here:
            y, estimate = labels.index(effect.label) + offset, effect.estimate
            draw_spread(axis, estimate, y, _COLOURS[treatment], across=True)
            axis.plot([estimate.value or 0.0], [y], marker="o", ls="", markersize=4.5, color=_COLOURS[treatment],
                      label=f"{treatment} batch-norm statistics" if effect is here[0] else None,
                      markerfacecolor=_COLOURS[treatment] if estimate.conclusive else "white")  # fmt: skip
            axis.annotate(f"n = {estimate.n_parents} ({estimate.n_pairs})", (1.01, y),
                          xycoords=("axes fraction", "data"), fontsize=6, va="center",
                          color=_COLOURS[treatment])  # fmt: skip
    axis.axvline(0, color="0.3", lw=0.9)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel("average less control: test accuracy (points); to the right the average is better", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"{title}\nEffects paired within pairs, all cells together [95 % over parents]; n = parents "
                    "(pairs); hollow: no interval, and dots: each parent", fontsize=9)  # fmt: skip
    save_figure(figure, path)


def _controls(frame: polars.DataFrame) -> Iterator[tuple[str, polars.DataFrame]]:
    """Each control's label and rows, in the order of the frame's kinds."""
    names = [*_WORDS, *AFTER_AXES]
    for name in names:
        rows = frame.filter(polars.col("control") == name)
        if not rows.height:
            continue
        word = _WORDS.get(name, name)
        if name == "lawa":
            yield from _lawa(frame, rows, word)
        elif name in AFTER_AXES:
            for (value, epochs), chosen in groups(rows, ["value", "epochs"]):
                yield f"{name}: {value}, after {epochs} further epoch{'s' * (epochs != 1)}", chosen
        elif name == "children_on":
            for (epochs,), chosen in groups(rows.sort("epochs"), ["epochs"]):
                yield f"{word} ({epochs} epoch{'s' * (epochs != 1)})", chosen
        elif name == "dropped_rate":
            for (value, epochs), chosen in groups(rows.sort("epochs"), ["value", "epochs"]):
                when = "before averaging" if epochs is None else f"for {epochs} epoch{'s' * (epochs != 1)} more"
                yield f"{word} ({value} times, {when})", chosen
        elif name in ("ema", "alpha"):
            text = {"ema": "decay", "alpha": "alpha"}[name]
            for (value,), chosen in groups(rows, ["value"]):
                yield f"{word} ({text} {value})", chosen
        else:
            yield word, rows


def _lawa(frame: polars.DataFrame, rows: polars.DataFrame, word: str) -> Iterator[tuple[str, polars.DataFrame]]:
    keys: Sequence[str] = [*frame.columns[: frame.columns.index("control")], "batch_norm"]
    longest = polars.col("epochs").max().over(keys)
    for text, epochs in zip(_LAWA, (2, (longest // 2).clip(2), longest), strict=True):
        yield f"{word}, {text}", rows.filter(polars.col("epochs") == epochs)
    hindsight = rows.group_by(keys, maintain_order=True).agg(polars.col("effect_points").min())
    yield f"{word}, {_HINDSIGHT}", hindsight
