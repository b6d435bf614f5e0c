"""The files of a study's directory: its frames, tables and figure, and what they were made with."""

import hashlib
from pathlib import Path

import polars

from fastwi.analysis.columns import Columns
from fastwi.analysis.opened import OpenedSweep
from fastwi.config.read import Request
from fastwi.config.write import deciding, sweep_to_yaml
from fastwi.files import to_json, write_text
from fastwi.report.figures import save_figure
from fastwi.report.manifest import cards_of, manifest, subject_of
from fastwi.report.rows import write_frame
from fastwi.report.study import DECIDING, INPUTS, Frames, Study, shown_once
from fastwi.report.summary import OVER_PARENTS, Table, sentence
from fastwi.sealed import MANIFEST, seal_directory


def write_study(
    request: Request, study: Study, opened: OpenedSweep, frames: Frames, seconds: float
) -> tuple[list[Table], str]:
    """Write what a study found; its manifest last. `seconds`: that it took.

    Returns its tables, and the note on what they do not show. Raises UserError where a file cannot be written.
    """
    directory, config = request.directory, opened.planned.points[0].config
    kept, note = shown_once(frames)
    tables = study.tables(kept)
    cards = cards_of(opened.planned, opened.resources)
    # An old manifest must not stand for a mixture of old and new files.
    (directory / MANIFEST).unlink(missing_ok=True)
    for name, frame in frames.items():
        _write_frame(frame, directory / name, study.columns[name])
    title = f"{subject_of(request.spec, cards)} (sweep {request.sweep})"
    options = study.chosen(request.options)
    lines = [
        f"# {request.sweep}: {request.study}",
        "",
        f"{sentence(study.question)}: {title}.",
        "",
    ]
    lines += [f"- {key}: {to_json(value)}" for key, value in options.items()]
    lines += [f"- {note}"] if note else []
    lines += [f"- left out, diverged: {cell}" for cell in opened.left_out]
    for table in tables:
        lines += ["", table.markdown().rstrip("\n")]
    write_text(directory / "summary.md", "\n".join([*lines, "", OVER_PARENTS]) + "\n")
    save_figure(study.draw(kept, "\n".join(filter(None, [title, note]))), directory / "figure.png")
    resolved = sweep_to_yaml(request.spec, request.options)
    identity = hashlib.sha256(f"{request.study}\n{resolved}".encode()).hexdigest()[:12]
    about = manifest(cards, opened.resources.engine(config).resolved, identity, opened.planned.networks)
    rows = {name: frame.height for name, frame in frames.items()}
    made = {"study": request.study, "sweep": request.sweep, "options": options, "rows": rows}
    made |= {DECIDING: deciding(request.spec), INPUTS: opened.planned.contents()}
    written = [*(f"{name}.parquet" for name in frames), "figure.png", "figure.svg"]
    made |= {"left_out_diverged": opened.left_out}
    seal_directory(directory, {**made, "seconds": round(seconds, 3), **about}, written)
    return tables, note


def _write_frame(frame: polars.DataFrame, stem: Path, columns: Columns) -> None:
    """The frame as Parquet, with unit and meaning of its columns in the metadata, and as CSV, lists as JSON."""
    write_frame(frame, stem.with_suffix(".parquet"), columns)
    flat = frame.with_columns(
        polars.Series(name, [None if v is None else to_json(v.to_list()) for v in frame[name]], polars.String)
        for name, kind in frame.schema.items()
        if kind == polars.List
    )
    write_text(stem.with_suffix(".csv"), flat.write_csv())
