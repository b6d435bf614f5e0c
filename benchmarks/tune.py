"""The table of `python -m fastwi.tune`, row after row, without keeping it for `engine.name: auto`."""

import sys
from dataclasses import asdict

from benchmarks.runner import Report, benchmark
from fastwi import tune
from fastwi.config.schema import Config


@benchmark
def main(report: Report, device: str = "auto", seconds: float = tune.BUDGET_S) -> None:
    """One table; what there are no `seconds` left for is left out."""
    rows = []
    for measured, _ in tune.measure(Config(), report.device, seconds):
        rows.append({key: value for key, value in asdict(measured).items() if value not in (None, "")})
        print(rows[-1], flush=True)
        report.failed |= measured.why not in ("", tune.LATE)
    report.add("ResNet20, batch 128", rows)


if __name__ == "__main__":
    sys.exit(main())
