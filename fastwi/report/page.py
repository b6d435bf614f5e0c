"""One HTML page of everything that sweeps and their studies found. It needs no other file and no network.

What a page says is gathered into plain views here; how it looks is in templates/page.html.j2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastwi.analysis.statistics import FEWEST, NOTHING, Estimate
from fastwi.errors import UserError
from fastwi.files import atomic_open
from fastwi.report import study as registered
from fastwi.report.claims import TITLES, Claim, Finding, judge
from fastwi.report.embed import csv_uri, data_uri, frame_csv_uri, inline_svg, png_bytes, png_width
from fastwi.report.finished import Finished, Study, find_sweeps
from fastwi.report.summary import Table, value_text
from fastwi.report.tables import cells, sweep_tables
from fastwi.version import __version__

_MOST_CSV_ROWS = 20_000  # of a data frame in the page; a larger one stays a file
_MOST_ROWS_OPEN = 24  # a longer table is folded
_DPI = 130  # of the PNGs, to their width in CSS pixels
_FIGURES = {
    "heatmap": "Heat map of the mean gain over k and s",
    "curves": "Test accuracy over epochs of parents, children and averages",
}


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it. `numeric`: for each column whether it holds numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    csv: str
    file: str
    folded: bool


@dataclass(frozen=True)
class FigureView:
    """A figure: `svg`, or else `png` shown; `png` to download; `width` in CSS pixels."""

    label: str
    svg: Markup | None
    png: str
    csv: str
    file: str
    width: int


@dataclass(frozen=True)
class StudyView:
    """A study that was run (tables, figures, data) or was not (command alone)."""

    name: str
    question: str
    command: str
    run: bool
    tables: Sequence[TableView] = ()
    figures: Sequence[FigureView] = ()
    data: Sequence[tuple[str, int, str, str]] = ()  # name, rows, CSV data URI or empty, path
    options: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class FindingView:
    """A finding in words. In 0..100: `mark` has the ends and the middle of its bar, or is None; `points` are the
    parents' own values, where there is no interval."""

    what: str
    value: str
    interval: str
    counted: str
    unit: str
    verdict: str
    verdict_text: str
    note: str
    mark: tuple[float, float, float, float] | None  # low, value, high, zero
    points: tuple[float, ...]


@dataclass(frozen=True)
class ClaimView:
    """A claim with the commands that its findings come from."""

    claim: Claim
    findings: Sequence[FindingView]
    details: Sequence[FindingView]
    csv: str
    commands: Sequence[str]
    missing: Sequence[tuple[str, str]]  # study, command


@dataclass(frozen=True)
class SweepView:
    """All that the page says about one sweep."""

    id: str
    name: str
    facts: Sequence[tuple[str, str]]
    claims: Sequence[ClaimView]
    tables: Sequence[TableView]
    figures: Sequence[FigureView]
    studies: Sequence[StudyView]
    machine: Sequence[tuple[str, str]]
    yaml: str
    command: str
    gains_csv: str
    partial: str


def sweep_views(targets: Iterable[Path], studies: Mapping[str, registered.Study]) -> list[SweepView]:
    """Read and judge the sweeps of `targets`: results directories, or stores.

    `studies`: the studies that there are. Raises UserError, in one line, for a target that is
    not there or holds no results, and for damaged files.
    """
    return [
        _sweep_view(f"sweep-{number}", sweep, studies)
        for number, sweep in enumerate(find_sweeps(targets, studies), 1)
    ]


def page_html(sweeps: Sequence[SweepView], command: str) -> str:
    """The page. `command` is the one that makes it again."""
    environment = Environment(
        loader=PackageLoader("fastwi.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        sweeps=sweeps, titles=TITLES, command=command, version=__version__, nothing=NOTHING, fewest=FEWEST
    )


def write_page(html: str, path: Path) -> None:
    """Write the page whole or not at all. Raises UserError where that is refused."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give --out a file, such as {path / 'report.html'}")
    with atomic_open(path) as stream:
        stream.write(html.encode("utf-8", "replace"))


def _sweep_view(id: str, sweep: Finished, studies: Mapping[str, registered.Study]) -> SweepView:
    found = cells(sweep.gains)
    frames = {name: study.frames for name, study in sweep.studies.items()}
    gains_csv = frame_csv_uri(sweep.gains)
    figures = []
    for stem, label in _FIGURES.items():
        for number, path in enumerate(_numbered(sweep.directory, stem), 1):
            figures.append(_figure(path, f"{id}-{stem}-{number}-", f"{label}; {sweep.name}", gains_csv))
    options = sweep.spec.options
    planned = len(options.parents)
    there = sweep.gains["parent_seed"].n_unique()
    partial = f"{there} of the sweep's {planned} parents are measured" if there < planned else ""
    return SweepView(
        id,
        sweep.name,
        _facts(sweep),
        [_claim_view(claim, sweep) for claim in judge(sweep.gains, frames)],
        [_table(table, f"{sweep.name}-{number}") for number, table in enumerate(sweep_tables(found), 1)],
        figures,
        [_study_view(id, name, study, sweep) for name, study in studies.items()],
        _machine(sweep.manifest),
        sweep.yaml,
        sweep.command,
        gains_csv,
        partial,
    )


def _facts(sweep: Finished) -> list[tuple[str, str]]:
    spec, gains = sweep.spec, sweep.gains
    dataset = sweep.manifest.get("dataset")
    name = dataset.get("name") if isinstance(dataset, dict) else None
    facts = [("network", spec.base.model.name), ("dataset", str(name or spec.base.data.path))]
    facts += [(axis.path, ", ".join(map(value_text, axis.values))) for axis in spec.axes]
    facts += [
        ("parents measured (n)", f"{gains['parent_seed'].n_unique()}"),
        ("children of each parent at each k", f"{spec.options.children}"),
        ("averages measured", f"{gains.height:,}"),
        ("further epochs of the average", f"{spec.base.experiment.after}"),
    ]
    return facts


def _machine(manifest: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A manifest as names and values, one level of names to the other by a dot."""
    rows = []
    for key, value in manifest.items():
        if isinstance(value, dict):
            rows += _machine(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, "" if value is None else str(value)))
    return rows


_CLAIM_STUDIES = {3: "governance", 4: "connectivity", 5: "importance"}


def _claim_view(claim: Claim, sweep: Finished) -> ClaimView:
    study = _CLAIM_STUDIES.get(claim.number, "")
    commands = [sweep.command] + ([sweep.study_command(study)] if study in sweep.studies else [])
    findings = _finding_views(claim.findings)
    details = _finding_views(claim.details)
    columns = ("what", "estimate", "low", "high", "unit", "parents", "pairs", "verdict", "note")
    rows = [
        (f.what, e.value, e.low, e.high, f.unit, e.n_parents, e.n_pairs, f.verdict, e.note)
        for f in (*claim.findings, *claim.details)
        for e in (f.estimate,)
    ]
    missing = [(name, sweep.study_command(name)) for name in claim.studies]
    return ClaimView(claim, findings, details, csv_uri(columns, rows), commands, missing)


def _finding_views(findings: Sequence[Finding]) -> list[FindingView]:
    """Findings of one unit share a scale, which holds 0."""
    spans: dict[str, tuple[float, float]] = {}
    for f in findings:
        low, high = spans.get(f.unit, (0.0, 0.0))
        ends = [v for v in (f.estimate.low, f.estimate.value, f.estimate.high, *_points(f.estimate)) if v is not None]
        spans[f.unit] = (min([low, *ends]), max([high, *ends]))
    return [_finding_view(f, *spans[f.unit]) for f in findings]


def _finding_view(finding: Finding, low: float, high: float) -> FindingView:
    e, signed = finding.estimate, "{:+.2f}".format
    mark, points = None, tuple[float, ...]()
    if e.value is not None and high > low:
        ends = (e.value if e.low is None else e.low, e.value, e.value if e.high is None else e.high, 0.0)
        mark, points = (
            tuple(round(4 + 92 * (v - low) / (high - low), 2) for v in values) for values in (ends, _points(e))
        )
    return FindingView(
        finding.what,
        "undefined" if e.value is None else signed(e.value),
        "none" if e.low is None or e.high is None else f"[{signed(e.low)}, {signed(e.high)}]",
        _counted(e),
        finding.unit,
        finding.verdict,
        finding.verdict_text,
        e.note,
        mark,  # type: ignore[arg-type]
        points,
    )


def _points(estimate: Estimate) -> tuple[float, ...]:
    """What is drawn of an estimate without an interval."""
    return () if estimate.conclusive else estimate.points


def _counted(estimate: Estimate) -> str:
    parents, pairs = estimate.n_parents, estimate.n_pairs
    return f"n = {parents} parent{'s' * (parents != 1)}, {pairs:,} pair{'s' * (pairs != 1)}"


def _study_view(id: str, name: str, known: registered.Study, sweep: Finished) -> StudyView:
    command, question = sweep.study_command(name), known.question
    study = sweep.studies.get(name)
    if study is None:
        return StudyView(name, question, command, False)
    main = next(iter(study.frames.values()), None)
    csv = "" if main is None or main.height > _MOST_CSV_ROWS else frame_csv_uri(main)
    return StudyView(
        name,
        question,
        command,
        True,
        [_table(table, f"{sweep.name}-{name}-{n}") for n, table in enumerate(_study_tables(study, known), 1)],
        [
            _figure(path, f"{id}-{name}-{n}-", f"Figure of the study {name}: {question}; {sweep.name}", csv)
            for n, path in enumerate(_numbered(study.directory, "figure"), 1)
        ],
        [
            (key, frame.height, frame_csv_uri(frame) if frame.height <= _MOST_CSV_ROWS else "",
             str(study.directory / f"{key}.csv"))
            for key, frame in study.frames.items()
        ],
        [(key, str(value)) for key, value in study.options.items()],
    )  # fmt: skip


def _study_tables(study: Study, known: registered.Study) -> list[Table]:
    """The study's own tables. A frame of another version may lack what they need: that is said in one line."""
    try:
        return known.tables(study.frames)
    except (KeyError, polars.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{study.directory}: not of this version ({reason}); run python -m fastwi.analyze {study.name} again"
        ) from error


def _table(table: Table, file: str) -> TableView:
    return TableView(
        table.title, table.columns, table.rows, table.numeric, csv_uri(table.columns, table.rows), f"{file}.csv",
        len(table.rows) > _MOST_ROWS_OPEN,
    )  # fmt: skip


def _figure(path: Path, prefix: str, label: str, csv: str) -> FigureView:
    content = png_bytes(path)
    drawn = path.with_suffix(".svg")
    svg = Markup(inline_svg(drawn, prefix, label)) if drawn.exists() else None
    width = round(png_width(content) * 96 / _DPI)
    return FigureView(label, svg, data_uri(content, "image/png"), csv, prefix.rstrip("-"), width)


def _numbered(directory: Path, stem: str) -> list[Path]:
    """stem.png, stem-2.png, stem-3.png ... as far as they go."""
    found = []
    path = directory / f"{stem}.png"
    while path.exists():
        found.append(path)
        path = directory / f"{stem}-{len(found) + 1}.png"
    return found
