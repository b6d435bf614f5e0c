"""`python -m fastwi.analyze NAME --config SWEEP.yaml`: answer one question for a finished sweep. Nothing is trained.

A study measures (`fastwi.analysis.studies`), its presentation says and draws what came out (`fastwi.report.studies`).
Both modules have the study's name, and are imported when it is asked for.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.cli import command
from fastwi.config.analysisfile import AnalysisRequest, analysis_to_yaml, read_analysis_request, study_lines
from fastwi.data.card import read_card
from fastwi.files import atomic_path, to_json, write_text
from fastwi.sealed import MANIFEST, seal_directory

if TYPE_CHECKING:
    import polars

    from fastwi.analysis.studies.opened import OpenedSweep
    from fastwi.report.summary import Summary, Table

STUDIES = {
    "connectivity": "the barrier and the errors on the line between the children, beside the gain",
    "importance": "the importance-score splits of the training images on which averaging gains and loses",
    "governance": "what goes with the gain: k, s, learning rate, the children's distance, the barrier",
    "blocks": "what each block of layers does when it alone is interpolated",
    "plane": "the loss over the plane through parent, A and B",
    "controls": "what else could explain the gain: control comparisons",
}
"""The studies by name, each with what it answers. The name is that of the modules and of their function."""

_DESCRIPTION = (
    "Answers one question for a finished sweep from its stored states and measurements, and writes tables, figures "
    "and the data to analyses/NAME in the sweep's directory. Nothing is trained."
)


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input or states that are not there, 130 interrupted."""
    request = read_analysis_request(argv, STUDIES, description=_DESCRIPTION)
    if request.list_only:
        print(to_json(STUDIES) if request.json else "\n".join(study_lines(STUDIES)))
        return 0
    return _analyze(request)


def _analyze(request: AnalysisRequest) -> int:
    # torch takes seconds to import: bad input is refused before.
    from fastwi.analysis.studies.opened import OpenedSweep
    from fastwi.report.study_progress import StudyProgress

    study = getattr(import_module(f"fastwi.analysis.studies.{request.name}"), request.name)
    presentation = import_module(f"fastwi.report.studies.{request.name}")
    with OpenedSweep(request.spec, Path(request.spec.options.directory, request.sweep)) as opened:
        if request.dry_run:
            _plan(request, opened).show(request.json)
            return 0
        begun = time.monotonic()
        with StudyProgress(request.name) as progress:
            frames: dict[str, polars.DataFrame] = study(opened, request.options, progress.tell)
        for cell in opened.left_out:
            print(f"fastwi: left out, diverged: {cell}", file=sys.stderr)
        tables: list[Table] = presentation.tables(frames)
        # An old manifest must not stand for a mixture of old and new files.
        (request.directory / MANIFEST).unlink(missing_ok=True)
        columns = getattr(import_module(study.__module__), "COLUMNS", {})
        for name, frame in frames.items():
            _write_frame(frame, request.directory / name, columns)
        title = _title(request)
        write_text(request.directory / "summary.md", _markdown(request, title, tables, opened.left_out))
        presentation.draw(frames, request.directory / "figure.png", f"{title}: {request.name}")
        seal_directory(request.directory, _manifest(request, opened, frames, time.monotonic() - begun))
    _summary(request, frames, tables).show(request.json)
    return 0


def _write_frame(frame: "polars.DataFrame", stem: Path, columns: dict[str, Any]) -> None:
    """The frame as Parquet, with unit and meaning of its columns in the metadata, and as CSV, lists as JSON."""
    import polars

    from fastwi.report.rows import write_frame

    write_frame(frame, stem.with_suffix(".parquet"), columns)
    flat = frame.with_columns(
        polars.Series(name, [None if v is None else to_json(v.to_list()) for v in frame[name]], polars.String)
        for name, kind in frame.schema.items()
        if kind == polars.List
    )
    with atomic_path(stem.with_suffix(".csv")) as temporary:
        flat.write_csv(temporary)


def _title(request: AnalysisRequest) -> str:
    base = request.spec.base
    return f"{request.sweep}: {base.model.name} on {read_card(Path(base.data.path)).name}"


def _markdown(request: AnalysisRequest, title: str, tables: "list[Table]", left_out: Sequence[str]) -> str:
    """The study's tables with what they rest on."""
    from fastwi.report.summary import OVER_PARENTS

    lines = [f"# {title}: {request.name}", "", f"{STUDIES[request.name].capitalize()}.", ""]
    lines += [f"- {key}: {to_json(value)}" for key, value in asdict(request.options).items()]
    lines += [f"- left out, diverged: {cell}" for cell in left_out]
    for table in tables:
        lines += ["", table.markdown().rstrip("\n")]
    lines += ["", OVER_PARENTS]
    return "\n".join(lines) + "\n"


def _manifest(
    request: AnalysisRequest, opened: "OpenedSweep", frames: "dict[str, polars.DataFrame]", seconds: float
) -> dict[str, Any]:
    """What the study was made with; its presence says that all other files are whole and belong together."""
    from fastwi.report.manifest import manifest

    config = opened.planned.points[0].config
    identity = hashlib.sha256(f"{request.name}\n{analysis_to_yaml(request)}".encode()).hexdigest()[:12]
    about = manifest(
        opened.resources.card(config), opened.resources.engine(config).resolved, identity, opened.planned.networks
    )
    return {
        "study": request.name, "sweep": request.sweep, "options": asdict(request.options),
        "rows": {name: frame.height for name, frame in frames.items()}, "left_out_diverged": opened.left_out,
        "seconds": round(seconds, 3), **about,
    }  # fmt: skip


def _summary(request: AnalysisRequest, frames: "dict[str, polars.DataFrame]", tables: "list[Table]") -> "Summary":
    from fastwi.report.summary import Summary

    rows = {name: frame.height for name, frame in frames.items()}
    values = {"study": request.name, "directory": str(request.directory), "rows": rows}
    files = ", ".join(f"{name}.parquet" for name in frames)
    line = f"{request.directory}: {files} (and .csv), summary.md, figure.png, .pdf and .svg, manifest.json"
    return Summary(values, [line], tables)


def _plan(request: AnalysisRequest, opened: "OpenedSweep") -> "Summary":
    """What the study would start from, and where it would write."""
    from fastwi.report.summary import Summary

    places = opened.planned.places
    kept = sum(opened.has(place.ends) for place in places)
    values = {"study": request.name, "directory": str(request.directory), "points": len(places),
              "points_with_states": kept, "options": asdict(request.options)}  # fmt: skip
    lines = [
        analysis_to_yaml(request),
        f"# {request.name}: {STUDIES[request.name]}",
        f"# {len(places):,} points, of {kept:,} the children's states are in {opened.store.directory}; "
        f"would write to {request.directory}",
    ]
    return Summary(values, lines)


if __name__ == "__main__":
    sys.exit(main())
