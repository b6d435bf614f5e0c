"""What a sweep costs beside the training and evaluation that it is made of.

(a) path: ResNet20s whose training and evaluation are replaced by nothing: plan, schedule, clone, average, commit. A
    parent has 140 epochs: k = 10 and 20, 4 children each, s = 10, 10 epochs of each average. Target: 1,000 epochs of
    single networks a second on 2 cores.
(b) pairs: pairs of one parent's children, averaged from the store and ready to be evaluated. Target: at least 60 % of
    the speed of reading and hashing the files alone.
(c) grid: configs/digits_k_s_grid.yaml, trained. Target: 1.05 x its steps timed alone, right after it.
(d) with --long EPOCHS alone: so many epochs of a network of 40 numbers, replaced by nothing. The rate in the last
    tenth: at least 0.8 of that in the first.

Each sweep is a command in a fresh process, timed without imports and figures; its store is written in the directory
--place. --before DIR measures another checkout's fastwi beside this one, in turn. How long it takes to plan:
`python -m benchmarks.planning`.
"""

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runner import Report, benchmark, fresh, over_rounds
from fastwi.cli import SPINS

HERE, BEFORE = "this commit", "before"
PARTS = {
    "path": "(a) ResNet20s, training and evaluation replaced by nothing; target: 1,000 epochs/s",
    "pairs": "(b) Pairs averaged from the store; target: 60 % of files read and hashed alone",
    "grid": "(c) The k x s grid on digits; target: at most 1.05 x its steps alone",
}
_LONG = "(d) Epochs of tiny networks; target: the last tenth at 0.8 of the first"


@benchmark
def main(
    report: Report, parts: tuple[str, ...] = tuple(PARTS), before: str = "", rounds: int = 3, parents: int = 8,
    pairs: int = 512, images: int = 0, long: int = 0, threads: int = 0, place: str = tempfile.gettempdir(),
) -> None:  # fmt: skip
    """Each part is a table, in rounds of a process for each checkout."""
    from data_prep import prepare

    here = Path(__file__).parent
    trees = {HERE: here.parent} | ({BEFORE: Path(before).resolve()} if before else {})
    settings: dict[str, Any] = {"parents": parents, "pairs": pairs, "images": images, "epochs": long}
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(dir=place) as data:
        settings |= {"threads": threads, "data": str(prepare("digits", Path(data) / "digits", writer="raw"))}
        for part in ("long",) if long else parts:
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
            for _ in range(rounds):
                for name in draw.sample(list(trees), len(trees)):
                    # The command finds torch loaded there, and leaves its threads as they are: so they are set here.
                    file = str(here / "sweep_parts.py")
                    found[name].append(fresh(file, part, settings, trees[name], place, GOMP_SPINCOUNT=SPINS))
            rows = [{"": name, **over_rounds(every)} for name, every in found.items()]
            measured = [{"part": part, "what": name, **each} for name, every in found.items() for each in every]
            report.add(PARTS.get(part, _LONG), rows, measured)


if __name__ == "__main__":
    sys.exit(main())
