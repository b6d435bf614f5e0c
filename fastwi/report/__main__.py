"""`python -m fastwi.report TARGET ...`: one self-contained HTML page of finished sweeps and their studies."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from fastwi.cli import command
from fastwi.files import to_json
from fastwi.version import __version__

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
    from fastwi.report.page import SweepView, page_html, sweep_views, write_page
    from fastwi.studies import all_studies

    sweeps: list[SweepView] = sweep_views(targets, all_studies())
    html = page_html(sweeps, shlex.join(["python", "-m", "fastwi.report", *argv]))
    write_page(html, out)
    if as_json:
        print(to_json({"file": str(out), "bytes": out.stat().st_size, "sweeps": [_said(s) for s in sweeps]}))
        return 0
    for sweep in sweeps:
        for view in sweep.claims:
            print(f"{sweep.name}: claim {view.claim.number}: {view.claim.verdict_text}")
    print(f"{out}: {len(sweeps)} sweep{'s' * (len(sweeps) != 1)}, {out.stat().st_size / 2**20:.1f} MiB")
    return 0


def _said(sweep: Any) -> dict[str, Any]:
    """A sweep's claims as plain values."""
    claims = []
    for view in sweep.claims:
        findings = [
            {
                "what": f.what, "value": f.estimate.value, "low": f.estimate.low, "high": f.estimate.high,
                "unit": f.unit, "n_parents": f.estimate.n_parents, "n_pairs": f.estimate.n_pairs,
                "verdict": f.verdict, "note": f.estimate.note,
            }
            for f in view.claim.findings
        ]  # fmt: skip
        claims.append(
            {"claim": view.claim.number, "verdict": view.claim.verdict, "findings": findings,
             "missing": [command for _, command in view.missing]}
        )  # fmt: skip
    return {"name": sweep.name, "claims": claims, "not_run": [study.name for study in sweep.studies if not study.run]}


if __name__ == "__main__":
    sys.exit(main())
