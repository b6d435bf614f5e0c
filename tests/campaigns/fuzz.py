"""`python tests/campaigns/fuzz.py`: damaged and hostile inputs for all that reads what a user passes.

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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from faulty.begin import printed_seed, workplace

TARGETS = {"betons": 0.45, "checkpoints": 0.34, "configs": 0.15, "stores": 0.02, "sources": 0.04}
MOST_SILENCE = 40.0  # seconds that one input may take on a busy machine before it counts as a hang
_WORKER = Path(__file__).parent / "hostile" / "worker.py"


@dataclass
class Tally:
    """Of one target. `findings` are kept inputs; `lost` those among them that took their process along."""

    wanted: int
    refused: int = 0
    accepted: int = 0
    lost: list[str] = field(default_factory=list)


class Campaign:
    """The driver: starts workers, watches their journal, and starts another where one dies or hangs."""

    def __init__(self, seed: int, counts: dict[str, int], place: Path, findings: Path, first: int = 0) -> None:
        self._seed, self._place, self._findings, self._first = seed, place, findings, first
        self.tallies = {name: Tally(count) for name, count in counts.items()}
        self._journal = place / "journal"
        self._box = place / "box"
        (self._box / "work").mkdir(parents=True)
        (self._box / "outside" / "inner").mkdir(parents=True)
        for canary in ("outside/canary.txt", "outside/inner/canary.txt", "canary.txt"):
            (self._box / canary).write_text("unchanged\n")

    def run(self) -> None:
        """Try every input."""
        parts = [(name, self._first, tally.wanted) for name, tally in self.tallies.items() if tally.wanted]
        begun, make = time.monotonic(), True
        while parts:
            died = self._run_worker(parts, make, begun)
            make = False
            self._collect()
            if died is None:
                return
            name, number = self._current(parts)
            self._note_death(name, number, died)
            place = next(place for place, part in enumerate(parts) if part[0] == name)
            _, first, count = parts[place]
            parts = [(name, number + 1, first + count - number - 1), *parts[place + 1 :]]
            if not parts[0][2]:
                parts = parts[1:]

    def found(self, name: str) -> list[Path]:
        """The findings of a target."""
        return sorted(self._findings.glob(f"{name}-*"))

    def _run_worker(self, parts: list[tuple[str, int, int]], make: bool, begun: float) -> str | None:
        """How the worker died; None: it is done."""
        self._journal.unlink(missing_ok=True)
        Path(f"{self._journal}.done").unlink(missing_ok=True)
        job = {"corpus": str(self._place / "corpus"), "box": str(self._box), "findings": str(self._findings),
               "journal": str(self._journal), "seed": self._seed, "parts": parts}  # fmt: skip
        if make:
            job["make"] = [name for name, _, _ in parts]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with open(self._place / "worker.log", "wb") as log:
            command = [sys.executable, str(_WORKER), json.dumps(job)]
            worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            return self._watch(worker, begun)
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    def _watch(self, worker: "subprocess.Popen[bytes]", begun: float) -> str | None:
        last, moved, shown = b"", time.monotonic(), 0.0
        while True:
            try:
                code = worker.wait(0.2)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None:
                if code == 0:
                    return None
                return f"exit code {code}" if code > 0 else signal.Signals(-code).name
            now = time.monotonic()
            current = self._journal.read_bytes() if self._journal.exists() else b""
            if current != last:
                last, moved = current, now
            elif now - moved > MOST_SILENCE:
                return f"no end after {MOST_SILENCE:.0f} s"
            if now - shown >= (1 if sys.stderr.isatty() else 30):
                shown = now
                self._show(current, now - begun)

    def _show(self, current: bytes, seconds: float) -> None:
        words = current.decode().split()
        done = sum(tally.refused + tally.accepted for tally in self.tallies.values())
        total = sum(tally.wanted for tally in self.tallies.values())
        if words:
            finished = [line.split() for line in self._done()]
            done += sum(int(line[1]) + int(line[2]) for line in finished)
            if words[0] not in [line[0] for line in finished]:
                done += int(words[2]) + int(words[3])
        left = f", about {seconds * (total - done) / done / 60:.0f} min left" if done > 100 else ""
        end = "\r" if sys.stderr.isatty() else "\n"
        print(
            f"{words[0] if words else 'starting'}: {done:,} of {total:,} inputs{left}   ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    def _done(self) -> list[str]:
        path = Path(f"{self._journal}.done")
        return path.read_text().splitlines() if path.exists() else []

    def _collect(self) -> None:
        """Add up what the worker counted."""
        finished = self._done()
        current = self._journal.read_text().split() if self._journal.exists() else []
        lines = [line.split() for line in finished]
        if current and current[0] not in [line[0] for line in lines]:
            lines.append([current[0], current[2], current[3]])
        for name, refused, accepted in lines:
            self.tallies[name].refused += int(refused)
            self.tallies[name].accepted += int(accepted)

    def _current(self, parts: list[tuple[str, int, int]]) -> tuple[str, int]:
        if not self._journal.exists():
            raise SystemExit(f"the worker did not start:\n{self._log()}")
        name, number = self._journal.read_text().split()[:2]
        return name, int(number)

    def _note_death(self, name: str, number: int, how: str) -> None:
        finding = self._findings / f"{name}-{number}"
        finding.mkdir(parents=True, exist_ok=True)
        (finding / "report.txt").write_text(f"{how}\n{self._log()}")
        shutil.copytree(self._box / "work", finding / "input", symlinks=True, dirs_exist_ok=True,
                        ignore=lambda folder, names: [n for n in names if not _plain(Path(folder, n))])  # fmt: skip
        self.tallies[name].lost.append(how)

    def _log(self) -> str:
        return (self._place / "worker.log").read_bytes()[-5000:].decode(errors="replace")


def _plain(path: Path) -> bool:
    return path.is_symlink() or path.is_dir() or path.is_file()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inputs", type=int, default=100_000, help="in all; targets have their shares (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--only", type=int, help="try this one input, by its number")
    parser.add_argument("--findings", type=Path, help="directory for failing inputs (default: a new one)")
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    shares = TARGETS if options.target == "all" else {options.target: 1.0}
    counts = {name: max(1, round(options.inputs * share)) for name, share in shares.items()}
    if options.only is not None:
        counts = dict.fromkeys(shares, 1)
    findings = options.findings or Path(tempfile.mkdtemp(prefix="fuzz-findings-"))
    begun = time.monotonic()
    with workplace() as place:
        campaign = Campaign(seed, counts, place, findings, options.only or 0)
        campaign.run()
    print(f"{'target':<12}{'inputs':>9}{'refused':>9}{'accepted':>10}{'findings':>10}")
    bad, tried = 0, 0
    for name, tally in campaign.tallies.items():
        found = campaign.found(name)
        bad, tried = bad + len(found), tried + tally.wanted
        print(f"{name:<12}{tally.wanted:>9,}{tally.refused:>9,}{tally.accepted:>10,}{len(found):>10,}")
        assert tally.refused + tally.accepted + len(found) == tally.wanted
    print(
        f"{tried:,} inputs in {(time.monotonic() - begun) / 60:.1f} min; {bad:,} findings"
        + (f" in {findings}" if bad else "")
    )
    if not bad and options.findings is None:
        findings.rmdir()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
