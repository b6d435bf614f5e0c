"""`python -m fastwi.analyze NAME --config SWEEP.yaml`: answer one question for a finished sweep. Nothing is trained.

The questions are those of `fastwi.studies`, one file each.
"""

import sys
import time
from pathlib import Path

from fastwi.analysis.opened import OpenedSweep
from fastwi.cli import command
from fastwi.config.read import Request, read_analysis_request
from fastwi.config.write import study_lines, sweep_to_yaml
from fastwi.files import check_writable, locked_directory, to_json
from fastwi.report.figures import set_style
from fastwi.report.study import Frames, Study
from fastwi.report.summary import Summary, count_of
from fastwi.studies import all_studies


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input or states that are not there, 130 interrupted."""
    studies = all_studies()
    questions = {name: study.question for name, study in studies.items()}
    request = read_analysis_request(argv, questions)
    set_style(request.flags.figures)
    if not request.study:
        print(to_json(questions) if request.flags.json else "\n".join(study_lines(questions)))
        return 0
    study = studies[request.study]
    with OpenedSweep(request.spec, Path(request.spec.options.directory, request.sweep)) as opened:
        found = _plan(request, study, opened) if request.flags.dry_run else _carry_out(request, study, opened)
    found.show(request.flags.json)
    return 0


def _carry_out(request: Request, study: Study, opened: OpenedSweep) -> Summary:
    """Measure, and write the study's directory."""
    from fastwi.report.progress import Progress
    from fastwi.report.study_files import write_study

    # Before an hour of measuring, not after it: what is written names the engine, and is of a network as planned.
    check_writable(request.directory)
    opened.resources.engine(opened.planned.points[0].config)
    begun = time.monotonic()
    with Progress(request.study) as progress:
        frames: Frames = study.measure(opened, request.options, progress.show)
    for cell in opened.left_out:
        print(f"fastwi: left out, diverged: {cell}", file=sys.stderr)
    # One process at a time: the manifest has the checksums of all other files.
    with locked_directory(request.directory.parent):
        tables, note = write_study(request, study, opened, frames, time.monotonic() - begun)
    rows = {name: frame.height for name, frame in frames.items()}
    values = {"study": request.study, "directory": str(request.directory), "rows": rows}
    files = ", ".join(f"{name}.parquet" for name in frames)
    line = f"{request.directory}: {files} (and .csv), summary.md, figure.png, .pdf and .svg, manifest.json"
    return Summary(values, [*filter(None, [note]), line], tables)


def _plan(request: Request, study: Study, opened: OpenedSweep) -> Summary:
    """What the study would start from, and where it would write."""
    places = opened.planned.places
    kept = sum(opened.has(place.ends) for place in places)
    values = {"study": request.study, "directory": str(request.directory), "points": len(places),
              "points_with_states": kept, "options": study.chosen(request.options)}  # fmt: skip
    lines = [
        f"# {request.study}: {study.question}",
        f"# the children's states of {kept:,} of {count_of(len(places), 'point')} are in {opened.store.directory}; "
        f"would write to {request.directory}",
        sweep_to_yaml(request.spec, request.options, changed=True),
    ]
    return Summary(values, lines)


if __name__ == "__main__":
    sys.exit(main())
