"""`python -m fastwi.report TARGET ...`: one self-contained HTML page of finished sweeps and their studies."""

import argparse
import shlex
import sys
from pathlib import Path

from fastwi.cli import command
from fastwi.errors import UserError
from fastwi.files import atomic_open
from fastwi.version import __version__

_DESCRIPTION = (
    "Writes one HTML page that needs no other file and no network: every claim of the paper with its verdict, effect "
    "size, 95 % interval and n; tables, figures and data of sweeps and studies; and the commands that make them."
)
_EPILOG = "Exit codes: 0 ok; 1 failed; 2 bad use, or results that are missing or damaged; 130 Ctrl-C."
_TARGET = "a sweep's results directory, or a store: all sweeps that were made with it"


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        "python -m fastwi.report", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("targets", nargs="+", type=Path, metavar="TARGET", help=_TARGET)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first TARGET")
    parser.add_argument("--json", action="store_true", help="print file, claims and numbers as one JSON object")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as ended:  # argparse has said what there is to say
        return int(ended.code or 0)
    # polars, scipy and jinja2 take a second to import: --help does without.
    from fastwi.report.finished import find_sweeps
    from fastwi.report.page import page_html
    from fastwi.report.summary import Summary, count_of
    from fastwi.studies import all_studies

    out = arguments.out or arguments.targets[0] / "report.html"
    studies = all_studies()
    sweeps = find_sweeps(arguments.targets, studies)
    if out.is_dir():
        raise UserError(f"{out}: is a directory; give --out a file, such as {out / 'report.html'}")
    html = page_html(sweeps, studies, shlex.join(["python", "-m", "fastwi.report", *argv]))
    with atomic_open(out) as stream:
        stream.write(html.encode("utf-8", "replace"))
    size, shown, lines = out.stat().st_size, [], []
    for sweep in sweeps:
        lines += [
            f"{sweep.title}: claim {claim.number}: {claim.verdict_text}: {claim.statement.title}"
            for claim in sweep.claims
        ]
        claims = [
            {
                "claim": claim.number,
                "verdict": claim.verdict,
                "findings": [finding.facts for finding in claim.found.findings],
                "missing": [sweep.study_command(claim.lacking)] if claim.lacking else [],
            }
            for claim in sweep.claims
        ]
        not_run = [name for name in studies if name not in sweep.studies]
        about = {"name": sweep.name, "directory": str(sweep.directory)}
        shown.append({**about, "claims": claims, "not_run": not_run})
    lines.append(f"{out}: {count_of(len(sweeps), 'sweep')}, {size / 2**20:.1f} MiB")
    Summary({"file": str(out), "bytes": size, "sweeps": shown}, lines).show(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
