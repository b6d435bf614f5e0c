"""`python -m fastwi.report TARGET ...`: one self-contained HTML page of finished sweeps and their studies."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.cli import command
from fastwi.version import __version__

if TYPE_CHECKING:
    from fastwi.report.page import SweepView

_DESCRIPTION = (
    "Writes one HTML page that needs no other file and no network: every claim of the paper with its verdict, effect "
    "size, 95 % interval and n; tables, figures and data of sweeps and studies; and the commands that make them."
)
_EPILOG = "Exit codes: 0 ok; 1 failed; 2 bad use, or results that are missing or damaged; 130 Ctrl-C."


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        "python -m fastwi.report", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "targets", nargs="+", type=Path, metavar="TARGET",
        help="a sweep's results directory, or a store: all sweeps that were made with it",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the first TARGET")
    parser.add_argument("--json", action="store_true", help="print file, claims and numbers as one JSON object")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as ended:  # argparse has said what there is to say
        return int(ended.code or 0)
    return _report(arguments.targets, arguments.out or arguments.targets[0] / "report.html", arguments.json, argv)


def _report(targets: list[Path], out: Path, as_json: bool, argv: list[str]) -> int:
    # polars, scipy and jinja2 take a second to import: --help does without.
    from fastwi.report.page import page_html, sweep_views, write_page
    from fastwi.report.summary import Summary, count_of
    from fastwi.studies import all_studies

    studies = all_studies()
    sweeps = sweep_views(targets, studies)
    html = page_html(sweeps, studies, shlex.join(["python", "-m", "fastwi.report", *argv]))
    write_page(html, out)
    size = out.stat().st_size
    lines = [
        f"{view.sweep.name}: claim {claim.number}: {claim.verdict_text}" for view in sweeps for claim in view.claims
    ]
    lines.append(f"{out}: {count_of(len(sweeps), 'sweep')}, {size / 2**20:.1f} MiB")
    sweeps_found = [
        {**_facts(view), "not_run": [name for name in studies if name not in view.sweep.studies]} for view in sweeps
    ]
    Summary({"file": str(out), "bytes": size, "sweeps": sweeps_found}, lines).show(as_json)
    return 0


def _facts(view: "SweepView") -> dict[str, Any]:
    """A sweep's claims as plain values."""
    claims = []
    for claim in view.claims:
        findings = [
            {
                "what": f.what, "value": e.value, "low": e.low, "high": e.high, "unit": f.unit,
                "n_parents": e.n_parents, "n_pairs": e.n_pairs, "verdict": f.verdict, "note": e.note,
            }
            for f, e in ((finding, finding.estimate) for finding in claim.found.findings)
        ]  # fmt: skip
        lacking = claim.found.lacking
        missing = [view.sweep.study_command(lacking)] if lacking else []
        claims.append(
            {"claim": claim.number, "verdict": claim.verdict, "findings": findings, "missing": missing}
        )  # fmt: skip
    return {"name": view.sweep.name, "claims": claims}


if __name__ == "__main__":
    sys.exit(main())
