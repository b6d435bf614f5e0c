"""All numbers that a command showed or stored, as plain values, by the names that they are filed under.

They are gathered in the child that ran the command: a parent that has used polars could fork no more.
"""

import contextlib
import hashlib
import html.parser
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
from faulty.process import Main

Numbers = dict[str, Any]
"""By names that say all that decides them: equal names in two directories mean equal numbers."""

Collect = Callable[[Path, str], Numbers]


def reported(main: Main, collect: Collect) -> Main:
    """`main`, which leaves its numbers beside the directory that it runs in where it ends with 0 or 3 (partly)."""

    def begin(argv: list[str]) -> int:
        leave_out_figures()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = main(argv)
        sys.stdout.write(said.getvalue())
        if code in (0, 3):
            here = Path.cwd()
            found = json.dumps(_plain(collect(here, said.getvalue())))
            here.with_name(f"{here.name}.numbers").write_text(found)
        return code

    return begin


def leave_out_figures() -> None:
    """Have the commands draw nothing, in this process: no number is read from a figure, and drawing takes most time."""
    import fastwi.report.curves
    import fastwi.report.heatmap
    import fastwi.report.manifest
    import fastwi.studies.connectivity

    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    fastwi.report.heatmap.draw_heatmap = nothing
    fastwi.report.curves.draw_curves = fastwi.report.curves.draw_run = nothing
    fastwi.studies.connectivity.save_figure = nothing
    fastwi.report.manifest.commit = lambda: None  # two processes a run


def of_train(directory: Path, said: str) -> Numbers:
    """The rows shown and stored, and the table, of a run that is filed under its directory's name; and its store."""
    shown = json.loads(said)
    run = directory / shown["directory"]
    stored = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = {"shown": shown["metrics"], "stored": stored, "table": (run / "summary.md").read_text()}
    return {f"{run.name}: {what}": each for what, each in numbers.items()} | _measured(run / "store")


def of_sweep(directory: Path, _said: str) -> Numbers:
    """Each measurement in results.parquet and in the store by its state's key; gains and table under all of the keys."""
    numbers: Numbers = {}
    keys: set[str] = set()
    for home in sorted(path.parent for path in (directory / "sweeps").glob("*/results.parquet")):
        frame = polars.read_parquet(home / "results.parquet")
        for row in frame.to_dicts():
            key = f"{row.pop('state')} {row['batch_norm']} {row['metric']}"
            keys.add(key)
            numbers[f"{home.name}: {key}"] = [row["epoch"], row["value"]]
        gains = polars.read_parquet(home / "gains.parquet").to_dicts()
        digest = hashlib.sha256(json.dumps(sorted(keys)).encode()).hexdigest()
        numbers[f"{home.name}: gains of {digest}"] = gains
        numbers[f"{home.name}: rows of {digest}"] = frame.to_dicts()
        numbers[f"{home.name}: table of {digest}"] = (home / "summary.md").read_text()
    return numbers | _measured(directory / "store")


def _measured(directory: Path) -> Numbers:
    """All that is measured in a store, by state and treatment."""
    from fastwi.experiment.store import Store

    with Store.open(directory, create=False) as store:
        measurements = store.measurements()
    return {f"store: {state} {treatment}": repr(m.result()) for (state, treatment), m in measurements.items()}


def of_analysis(directory: Path, _said: str) -> Numbers:
    """The study's frames, filed under the identity in its manifest."""
    numbers: Numbers = {}
    for home in sorted(path.parent for path in (directory / "sweeps").glob("*/analyses/*/manifest.json")):
        identity = json.loads((home / "manifest.json").read_text())["identity"]
        for path in sorted(home.glob("*.parquet")):
            numbers[f"{identity}: {path.stem}"] = polars.read_parquet(path).to_dicts()
    return numbers


def of_report(directory: Path, said: str) -> Numbers:
    """The claims as printed, and every table cell and data file of the page."""
    shown = json.loads(said.strip().splitlines()[-1])
    page = _Page()
    page.feed((directory / shown["file"]).read_text())
    return {"claims": shown["sweeps"], "cells": page.cells, "data": page.data}


def of_export(directory: Path, _said: str) -> Numbers:
    """The tensors, each by its digest."""
    import torch

    state = torch.load(directory / "out.pt", weights_only=True)
    return {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for name, t in state.items()}


class _Page(html.parser.HTMLParser):
    """The text of table cells, and links to data in the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.data: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag in ("td", "th") or (self._inside and tag not in ("tr", "table"))
        if self._inside and tag in ("td", "th"):
            self.cells.append("")
        self.data += [
            value for name, value in attrs if name == "href" and value and value.startswith("data:text/csv")
        ]

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def _plain(value: Any) -> Any:
    """What JSON takes; a float as its exact text, so that NaN equals NaN."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)
