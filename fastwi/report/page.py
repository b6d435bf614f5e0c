"""One HTML page of everything that sweeps and their studies found. It needs no other file and no network.

How it looks is in templates/page.html.j2, which takes sweeps, claims and tables as they are, and the functions here.
"""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
from jinja2 import Environment, PackageLoader, StrictUndefined

from fastwi.analysis.statistics import FEWEST, NOTHING, Estimate
from fastwi.errors import UserError
from fastwi.files import atomic_open, to_json
from fastwi.report.claims import CLAIMS, Claim, Finding, judge
from fastwi.report.figures import DPI, numbered
from fastwi.report.finished import Finished, find_sweeps
from fastwi.report.study import Study
from fastwi.report.summary import Table, count_of, value_text
from fastwi.report.tables import cells, sweep_tables
from fastwi.version import __version__

_MOST_CSV_ROWS = 20_000  # of a data frame in the page; a larger one stays a file
_CLAIM_STUDIES = {3: "governance", 4: "connectivity", 5: "importance"}


@dataclass(frozen=True)
class SweepView:
    """A sweep and what is shown of it beside its files."""

    sweep: Finished
    claims: list[Claim]
    tables: list[Table]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was swept, by name."""
        spec, gains = self.sweep.spec, self.sweep.gains
        dataset = self.sweep.manifest.get("dataset") or {}
        return [
            ("network", spec.base.model.name),
            ("dataset", str(dataset.get("name") or spec.base.data.path)),
            *((axis.path, ", ".join(map(value_text, axis.values))) for axis in spec.axes),
            ("parents measured (n)", f"{gains['parent_seed'].n_unique()}"),
            ("children of each parent at each k", f"{spec.options.children}"),
            ("averages measured", f"{gains.height:,}"),
            ("further epochs of the average", f"{spec.base.experiment.after}"),
        ]

    @property
    def partial(self) -> str:
        """What is missing of the sweep, in words."""
        planned, there = len(self.sweep.spec.options.parents), self.sweep.gains["parent_seed"].n_unique()
        return f"{there} of the sweep's {planned} parents are measured" if there < planned else ""

    def commands(self, claim: Claim) -> str:
        """The commands that make what a claim rests on again, a line each."""
        study = _CLAIM_STUDIES.get(claim.number, "")
        return "\n".join([self.sweep.command, *([self.sweep.study_command(study)] * (study in self.sweep.studies))])


@dataclass(frozen=True)
class Figure:
    """A figure as data: URIs: `shown` as SVG where there is one, `png` to download; `width` in CSS pixels."""

    shown: str
    png: str
    width: int


@dataclass(frozen=True)
class Marked:
    """A finding on a scale of 0 to 100: low, value, high and zero, or without an interval each parent's value."""

    finding: Finding
    bar: list[float] | None
    points: list[float]


def sweep_views(targets: Iterable[Path], studies: Mapping[str, Study]) -> list[SweepView]:
    """Read and judge the sweeps of `targets`: results directories, or stores.

    `studies`: the studies that there are. Raises UserError, in one line, for a target that is not there or holds no
    results, and for damaged files.
    """
    views = []
    for sweep in find_sweeps(targets, studies):
        claims = judge(sweep.gains, {name: run.frames for name, run in sweep.studies.items()})
        views.append(SweepView(sweep, claims, sweep_tables(cells(sweep.gains))))
    return views


def page_html(sweeps: Sequence[SweepView], studies: Mapping[str, Study], command: str) -> str:
    """The page. `command` is the one that makes it again."""
    environment = Environment(
        loader=PackageLoader("fastwi.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"csv": csv_uri, "marked": marked, "counted": counted, "flat": flat}
    environment.globals |= {"figures": figures, "interval": interval_text, "most_csv_rows": _MOST_CSV_ROWS}
    return environment.get_template("page.html.j2").render(
        sweeps=sweeps, studies=studies, claims=CLAIMS, command=command, version=__version__, nothing=NOTHING,
        fewest=FEWEST,
    )  # fmt: skip


def write_page(html: str, path: Path) -> None:
    """Write the page whole or not at all. Raises UserError where that is refused."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give --out a file, such as {path / 'report.html'}")
    with atomic_open(path) as stream:
        stream.write(html.encode("utf-8", "replace"))


def figures(directory: Path, stem: str) -> list[Figure]:
    """The figures stem.png, stem-2.png, stem-3.png ... of a directory, as far as they go.

    An SVG is shown as an image: a browser runs nothing in it and fetches nothing for it.
    """
    found: list[Figure] = []
    while (path := numbered(directory / f"{stem}.png", len(found) + 1)).exists():
        content, svg = path.read_bytes(), path.with_suffix(".svg")
        png = _data_uri(content, "image/png")
        shown = _data_uri(svg.read_bytes(), "image/svg+xml") if svg.exists() else png
        found.append(Figure(shown, png, round(int.from_bytes(content[16:20], "big") * 96 / DPI)))
    return found


def csv_uri(data: "Table | polars.DataFrame | Sequence[Finding]") -> str:
    """A table, a frame (lists as JSON) or findings as a CSV data: URI."""
    rows: Iterable[Sequence[object]]
    if isinstance(data, Table):
        columns, rows = list(data.columns), data.rows
    elif isinstance(data, polars.DataFrame):
        columns = data.columns
        rows = ([to_json(value) if isinstance(value, list) else value for value in row] for row in data.iter_rows())
    else:
        columns = ["what", "estimate", "low", "high", "unit", "parents", "pairs", "verdict", "note"]
        found = [(f, f.estimate) for f in data]
        rows = [(f.what, e.value, e.low, e.high, f.unit, e.n_parents, e.n_pairs, f.verdict, e.note) for f, e in found]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return _data_uri(text.getvalue().encode(), "text/csv;charset=utf-8")


def marked(findings: Sequence[Finding]) -> list[Marked]:
    """Findings with their places; those of one unit share a scale, which holds 0."""
    drawn = {id(f): [f.estimate.low, f.estimate.value, f.estimate.high, *_points(f.estimate)] for f in findings}
    ends: dict[str, list[float]] = {}
    for f in findings:
        ends.setdefault(f.unit, [0.0]).extend(v for v in drawn[id(f)] if v is not None)
    found = []
    for f in findings:
        (low, high), e = (min(ends[f.unit]), max(ends[f.unit])), f.estimate
        places, points = None, list[float]()
        if e.value is not None and high > low:
            values = [e.value if end is None else end for end in (e.low, e.value, e.high)]
            places, points = (
                [round(4 + 92 * (value - low) / (high - low), 2) for value in each]
                for each in ([*values, 0.0], _points(e))
            )
        found.append(Marked(f, places, points))
    return found


def interval_text(estimate: Estimate) -> str:
    """'[+1.00, +2.00]', or 'none'."""
    if estimate.low is None or estimate.high is None:
        return "none"
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]"


def counted(estimate: Estimate) -> str:
    """'n = 5 parents, 10 pairs'."""
    return f"n = {count_of(estimate.n_parents, 'parent')}, {count_of(estimate.n_pairs, 'pair')}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A manifest as names and values, one level of names joined to the next by a dot."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, "" if value is None else str(value)))
    return rows


def _points(estimate: Estimate) -> tuple[float, ...]:
    """What is drawn of an estimate without an interval."""
    return () if estimate.conclusive else estimate.points


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
