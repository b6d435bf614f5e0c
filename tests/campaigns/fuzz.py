"""`python tests/campaigns/fuzz.py`: 100,000 hostile inputs for all that reads what a user passes.

Betons and cards, checkpoints, configurations and command lines, stores, sources of `data_prep`. Each input must be
refused in clean lines (UserError; exit code 2), or be accepted with the right content: compared with a second reading,
or with what was stored. Never another exception, a crash of the interpreter, a hang, a gigabyte of memory, a pickle
executed, a program started, or a byte written outside of the input's own directory.

Inputs are tried in a process of their own, with a bound on its memory. Failing ones are kept in the directory that is
printed, each with a report; `--seed S --target T --only N` tries one again. Exit code 1 where there are findings.
"""

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faulty.begin import printed_seed, workplace
from hostile.worker import keep

TARGETS = {"betons": 0.45, "checkpoints": 0.34, "configs": 0.15, "stores": 0.02, "sources": 0.04}
MOST_SILENCE = 40.0  # seconds that one input may take on a busy machine before it counts as a hang
_WORKER = Path(__file__).parent / "hostile" / "worker.py"


class Campaign:
    """The driver: starts workers, hears of each input, and starts another worker where one dies or hangs."""

    def __init__(self, seed: int, counts: dict[str, int], place: Path, findings: Path, first: int = 0) -> None:
        self._seed, self._place, self._findings, self._begun = seed, place, findings, time.monotonic()
        self._parts = [(name, first, count) for name, count in counts.items()]
        self._total, self._shown = sum(counts.values()), 0.0
        self.outcomes = {name: Counter[str]() for name in counts}
        self._box = place / "box"
        (self._box / "work").mkdir(parents=True)
        (self._box / "outside" / "inner").mkdir(parents=True)
        for canary in ("outside/canary.txt", "outside/inner/canary.txt", "canary.txt"):
            (self._box / canary).write_text("unchanged\n")

    def run(self) -> None:
        """Try every input."""
        while self._parts:
            name, number, how = self._run_worker()
            if not how:
                return
            log = (self._place / "worker.log").read_bytes()[-5000:].decode(errors="replace")
            if not name:
                raise SystemExit(f"the worker ended outside of an input: {how}\n{log}")
            keep(self._findings / f"{name}-{number}", self._box / "work", f"{how}\n{log}")
            self.outcomes[name]["finding"] += 1
            place = next(place for place, part in enumerate(self._parts) if part[0] == name)
            left = self._parts[place][1] + self._parts[place][2] - number - 1
            self._parts = [(name, number + 1, left)] * bool(left) + self._parts[place + 1 :]

    def _run_worker(self) -> tuple[str, int, str]:
        """The last input's target and number, and how the worker died over it ("": it is done)."""
        reading, writing = os.pipe()
        job = {"corpus": str(self._place / "corpus"), "box": str(self._box), "findings": str(self._findings),
               "pipe": writing, "seed": self._seed, "parts": self._parts}  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with (
            open(self._place / "worker.log", "wb") as log,
            open(reading),
            selectors.DefaultSelector() as ready,
        ):
            worker = subprocess.Popen(
                [sys.executable, str(_WORKER), json.dumps(job)], env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, pass_fds=[writing],
            )  # fmt: skip
            os.close(writing)
            ready.register(reading, selectors.EVENT_READ)
            name, number, rest, open_ = "", 0, "", False
            try:
                while ready.select(MOST_SILENCE if open_ else 10 * MOST_SILENCE):  # imports, valid files
                    chunk = os.read(reading, 1 << 16).decode()
                    if not chunk:
                        code = worker.wait()
                        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name if code else ""
                        return name if open_ else "", number, how
                    *lines, rest = (rest + chunk).split("\n")
                    for line in lines:
                        open_ = " " in line
                        if open_:
                            name, number = line.split()[0], int(line.split()[1])
                        else:
                            self.outcomes[name][line] += 1
                    self._show(name)
                return name, number, f"no end after {MOST_SILENCE:.0f} s"
            finally:
                worker.kill()
                worker.wait()

    def _show(self, name: str) -> None:
        seconds = time.monotonic() - self._begun
        if seconds - self._shown < (1 if sys.stderr.isatty() else 30):
            return
        self._shown, done = seconds, sum(counter.total() for counter in self.outcomes.values())
        left = f", about {seconds * (self._total - done) / done / 60:.0f} min left" if done > 100 else ""
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{name}: {done:,} of {self._total:,} inputs{left}   ", end=end, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, in shares (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--only", type=int, help="try this one input, by its number")
    parser.add_argument("--findings", type=Path, help="directory for failing inputs (default: a new one)")
    options = parser.parse_args()
    shares = TARGETS if options.target == "all" else {options.target: 1.0}
    counts = {name: max(1, round(options.inputs * share)) for name, share in shares.items()}
    if options.only is not None:
        counts = dict.fromkeys(shares, 1)
    findings = options.findings or Path(tempfile.mkdtemp(prefix="fuzz-findings-"))
    begun = time.monotonic()
    with workplace() as place:
        campaign = Campaign(printed_seed(options.seed), counts, place, findings, options.only or 0)
        campaign.run()
    print(f"{'target':<12}{'inputs':>9}{'refused':>9}{'accepted':>10}{'findings':>10}")
    for name, found in campaign.outcomes.items():
        print(f"{name:<12}{counts[name]:>9,}{found['refused']:>9,}{found['accepted']:>10,}{found['finding']:>10,}")
        assert found.total() == counts[name]
    bad = sum(found["finding"] for found in campaign.outcomes.values())
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{sum(counts.values()):,} inputs in {minutes:.1f} min; {bad:,} findings" + (f" in {findings}" if bad else "")
    )
    if not bad and options.findings is None:
        findings.rmdir()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
