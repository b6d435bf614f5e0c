"""One HTML page of everything that sweeps and their studies found. How it looks is in templates/page.html.j2."""

import base64
import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars
from jinja2 import Environment, PackageLoader, StrictUndefined

from fastwi.analysis.statistics import FEWEST, NOTHING, Estimate
from fastwi.files import to_json
from fastwi.report.claims import CLAIMS, Finding
from fastwi.report.figures import DPI, numbered
from fastwi.report.finished import Finished
from fastwi.report.study import Study
from fastwi.report.summary import Table, interval_text, n_text, sentence, value_text
from fastwi.version import __version__

_WIDE = 5.0  # what spans this many times the median would shrink all others
_MOST_CSV_ROWS = 20_000  # of a data frame in the page; a larger one stays a file
_LONG_CSV = 16 << 10  # bytes; a longer CSV is compressed, to a tenth or so


class Figure(NamedTuple):
    """A figure as a data: URI of its PNG; `path` of that, with PDF and SVG beside it; `width` in CSS pixels."""

    shown: str
    path: Path
    width: int


class Download(NamedTuple):
    """A table as a data: URI, and what its file's name ends with."""

    uri: str
    ending: str


def page_html(sweeps: Sequence[Finished], studies: Mapping[str, Study], command: str) -> str:
    """The page. `command` is the one that makes it again."""
    environment = Environment(
        loader=PackageLoader("fastwi.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"csv": csv_download, "marked": marked, "counted": counted, "flat": flat}
    environment.filters |= {"sentence": sentence, "value": value_text}
    environment.globals |= {"figures": figures, "interval": interval_text, "most_csv_rows": _MOST_CSV_ROWS}
    return environment.get_template("page.html.j2").render(
        sweeps=sweeps,
        studies=studies,
        claims=CLAIMS,
        command=command,
        version=__version__,
        nothing=NOTHING,
        fewest=FEWEST,
    )


def figures(directory: Path, stem: str) -> list[Figure]:
    """The figures stem.png, stem-2.png ... of a directory."""
    found: list[Figure] = []
    while (path := numbered(directory / f"{stem}.png", len(found) + 1)).exists():
        content = path.read_bytes()
        width = round(int.from_bytes(content[16:20], "big") * 96 / DPI)
        found.append(Figure(_data_uri(content, "image/png"), path, width))
    return found


def csv_download(data: "Table | polars.DataFrame | list[Finding]") -> Download:
    """A table, a frame (lists as JSON) or findings as CSV; compressed by gzip where it is long."""
    if isinstance(data, list):
        data = polars.DataFrame([finding.facts for finding in data], infer_schema_length=None)
    rows = data.rows if isinstance(data, Table) else data.iter_rows()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(data.columns)
    for row in rows:
        writer.writerow([to_json(value) if isinstance(value, list) else value for value in row])
    content = text.getvalue().encode()
    if len(content) > _LONG_CSV:
        return Download(_data_uri(gzip.compress(content, mtime=0), "application/gzip"), ".csv.gz")
    return Download(_data_uri(content, "text/csv;charset=utf-8"), ".csv")


def marked(findings: Sequence[Finding]) -> list[tuple[Finding, list[float], list[float]]]:
    """Findings with their places on a scale of 0 to 100: low, value, high and 0; without an interval each parent's.

    Those of one unit share a scale, which has 0. It is that of intervals of usual width: what of a wider one lies
    beyond it is at 0 or 100, all else at 4 to 96. Without places: there is nothing to draw.
    """
    drawn = defaultdict[str, list[list[float]]](list)
    for finding in findings:
        drawn[finding.unit].append([*_bar(finding.estimate), *_points(finding.estimate)])
    ends = {unit: _scale(values) for unit, values in drawn.items()}
    found = []
    for finding in findings:
        bar, points = (
            [_place(value, *ends[finding.unit]) for value in values] if any(ends[finding.unit]) else []
            for values in (_bar(finding.estimate), _points(finding.estimate))
        )
        found.append((finding, bar, points))
    return found


def _scale(drawn: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The ends of the scale of values that are drawn, those of one finding together; it has 0."""
    widths = [max(values) - min(values) for values in drawn if values]
    usual = _WIDE * median(widths or [0.0])
    kept = [values for values in drawn if values and (not usual or max(values) - min(values) <= usual)]
    every = [value for values in kept for value in values] + [0.0]
    return min(every), max(every)


def _place(value: float, low: float, high: float) -> float:
    """The place of a value on a scale from `low` to `high`."""
    if not low <= value <= high:
        return 0.0 if value < low else 100.0
    return round(4 + 92 * (value - low) / (high - low), 2)


def counted(estimate: Estimate) -> str:
    """'n = 5 parents, 10 pairs'."""
    return n_text(estimate.n_parents, estimate.n_pairs)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A manifest as names and values, one level of names joined to the next by a dot."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, "" if value is None else str(value)))
    return rows


def _bar(estimate: Estimate) -> list[float]:
    """Low, value, high and 0; without an interval three times the value; empty where that is undefined."""
    if estimate.value is None:
        return []
    ends = (estimate.low, estimate.value, estimate.high)
    return [*(estimate.value if end is None else end for end in ends), 0.0]


def _points(estimate: Estimate) -> tuple[float, ...]:
    """What is drawn of an estimate without an interval."""
    return () if estimate.conclusive or estimate.value is None else estimate.points


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
