"""`python tests/campaigns/flips.py`: one bit flipped in one file that a run or sweep reads or leaves.

For each flip a small finished or half-way run or sweep is copied, one bit of one file is flipped, and the command is
run again. What came of it is one of:

- refused: exit code 1, 2 or 3, and a line that says so and names the file;
- another name: other numbers, filed under another name than those of the whole files (a flip in a configuration, in a
  network's source or in given weights is another configuration, source or weights, which nothing can tell from an
  edit; the name has to tell them apart);
- the same: exit code 0 and every number as without the flip, whether the flip had no effect or what it damaged was
  noticed and made again ("made again": the command said so);
- WRONG: another number under the same name with exit code 0, a traceback, or a refusal that does not say which file.

Numbers are what is printed, and what stands in metrics.jsonl, results.parquet, gains.parquet, summary.md, the store,
the frames of a study, and the cells and data of a report, to the bit. Figures are not drawn.
Exit code 1 where anything is WRONG.
"""

import argparse
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}
sys.path.append(str(Path(__file__).parents[1]))  # what tests share

from faulty.begin import printed_seed, workplace
from faulty.process import Ended, run
from faulty.progress import shown
from flipped.jobs import Job, make_jobs, reported_numbers
from flipped.numbers import reported

REFUSED, ANOTHER, SAME, AGAIN, WRONG = "refused", "another name", "the same", "made again", "WRONG"
OUTCOMES = (REFUSED, ANOTHER, AGAIN, SAME, WRONG)
_AGAIN = re.compile(r"trained again|exported again|is made again")
_ENDS = 512  # bytes at both ends of a file, where formats keep what matters


@dataclass(frozen=True)
class Flip:
    """One bit of a file of one kind, before one command."""

    job: str
    kind: str
    file: Path
    byte: int
    bit: int

    def __str__(self) -> str:
        return f"{self.job}: bit {self.bit} of byte {self.byte} of {self.file}"


class Flips:
    """All flips of one campaign, in one directory."""

    def __init__(self, place: Path, seed: int, only: str) -> None:
        self._place = place / "box"
        self._place.mkdir()
        self._draw = random.Random(seed)
        jobs = [job for job in make_jobs(place) if only in job.name]
        self.pairs = [(job, kind) for job in jobs for kind in job.kinds if job.files(kind)]
        self.counted: Counter[tuple[str, str, str]] = Counter()
        self.wrong: list[str] = []

    def flip(self, job: Job, kind: str) -> None:
        """One flip in a file of a kind."""
        file = self._draw.choice(job.files(kind))
        data = bytearray((job.start / file).read_bytes())
        end = self._draw.randrange(min(_ENDS, len(data)))
        used = [at for at, value in enumerate(data) if value] or [0]  # most of a beton is padding
        byte = self._draw.choice(
            (self._draw.randrange(len(data)), end, len(data) - 1 - end, *self._draw.choices(used, k=2))
        )
        flip = Flip(job.name, kind, file, byte, self._draw.randrange(8))
        directory = self._place / "t"
        shutil.copytree(job.start, directory)
        data[byte] ^= 1 << flip.bit
        (directory / file).write_bytes(data)
        ended = run(reported(job.main, job.collect), job.argv, directory)
        outcome, why = _judged(job, flip, ended, reported_numbers(directory))
        shutil.rmtree(directory)
        self.counted[kind, job.name, outcome] += 1
        if outcome == WRONG:
            self.wrong.append(f"{flip}: {why}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)


def _judged(job: Job, flip: Flip, ended: Ended, found: dict[str, Any]) -> tuple[str, str]:
    """The outcome, and why it is wrong where it is."""
    if ended.status not in (0, 1, 2, 3) or "Traceback" in ended.said:
        return WRONG, f"exit code {ended.status}: {ended.said[-1500:]}"
    if found and (why := _contradicted(found, job.expected)):
        return WRONG, why
    if ended.status != 0:
        lines = [line for line in ended.said.splitlines() if line.startswith("fastwi: ")]
        if not any(_names(line, flip) for line in lines):
            return WRONG, f"exit code {ended.status}, and no line names the file: {ended.said[-500:]}"
        return REFUSED, ""
    if found != job.expected:
        return ANOTHER, ""
    return (AGAIN if _AGAIN.search(ended.said) else SAME), ""


def _contradicted(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What has the same name and another value; empty where there is nothing."""
    for name in found.keys() & expected.keys():
        if found[name] != expected[name]:
            return f"{name} is {_excerpt(found[name], expected[name])}"
    return ""


def _excerpt(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        found, expected = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
    return f"{str(found)[:300]}, not {str(expected)[:300]}"


def _names(line: str, flip: Flip) -> bool:
    """Whether a line names the file, its directory, or (of a configuration) what is wrong in it."""
    directory = str(flip.file.parent)
    return flip.file.name in line or (directory != "." and directory in line) or flip.kind == "config file"


def _table(counted: Counter[tuple[str, str, str]]) -> str:
    """Flips by kind of file and command, one column an outcome."""
    rows = sorted({(kind, job) for kind, job, _ in counted})
    lines = [f"{'file':<32}{'command':<24}" + "".join(f"{name:>14}" for name in OUTCOMES)]
    for kind, job in rows:
        lines.append(f"{kind:<32}{job:<24}" + "".join(f"{counted[kind, job, name] or '-':>14}" for name in OUTCOMES))
    totals = [sum(count for (_, _, outcome), count in counted.items() if outcome == name) for name in OUTCOMES]
    return "\n".join([*lines, f"{'all':<56}" + "".join(f"{total:>14}" for total in totals)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="commands with this in their name alone, such as sweep")
    parser.add_argument("--kind", default="", help="files of kinds with this in their name alone, such as card")
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    begun = time.monotonic()
    with workplace() as place:
        flips = Flips(place, seed, options.only)
        print(f"whole runs made in {time.monotonic() - begun:.0f} s", flush=True)
        pairs = [(job, kind) for job, kind in flips.pairs if options.kind in kind]
        random.Random(seed).shuffle(pairs)
        seen: set[str] = set()
        # Each kind once first, however few flips there are.
        pairs.sort(key=lambda pair: pair[1] in seen or seen.add(pair[1]) is not None)
        for number in shown(options.flips, "flips"):
            flips.flip(*pairs[number % len(pairs)])
    print(_table(flips.counted))
    print(f"{flips.counted.total()} bits flipped, {len(flips.wrong)} wrong results")
    return 1 if flips.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
