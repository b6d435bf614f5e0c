"""`python tests/campaigns/sweep.py`: the digits grid of configs/digits_k_s_grid.yaml under kill -9, point by point.

1. An undisturbed sweep; epochs counted from its measurements against the tree's.
2. The sweep again in a fresh store, killed (-9) at `--kills` random moments: the same results. `kills.py` holds what a
   kill costs to its bound in time.
3. Every one of its 36 points run alone through fastwi.train; every number equal to the bit.

Too long for the suite; `--images` training images make it shorter than the whole set would.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import polars
from faulty.begin import printed_seed, workplace

from data_prep import prepare
from fastwi.config.read import read_sweep_request
from fastwi.config.write import to_yaml
from fastwi.experiment.planner import plan_sweep
from fastwi.experiment.store import Store
from fastwi.report.plan import naive_epochs
from fastwi.report.rows import point_rows
from fastwi.sweep import main as sweep
from fastwi.train import main as train

GRID = Path(__file__).parents[2] / "configs" / "digits_k_s_grid.yaml"


def arguments(directory: Path, data: Path, images: int) -> list[str]:
    pairs = {
        "sweep.store": directory / "store", "sweep.directory": directory, "sweep.name": "grid", "data.path": data,
        "data.train_images": images, "data.test_images": 100, "engine.threads": 1, "engine.device": "cpu",
    }  # fmt: skip
    return ["--config", str(GRID), *(f"--{key}={value}" for key, value in pairs.items())]


def kill_once(argv: list[str], draw: random.Random) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastwi.sweep", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    if draw.random() < 0.9:
        process.stderr.readline()  # planned; else it is killed while it imports and plans
    time.sleep(draw.uniform(0, 1.5))
    process.kill()
    process.communicate()
    assert process.returncode < 0, "the sweep ended before it was killed often enough"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    draw = random.Random(printed_seed(options.seed))
    os.environ["OMP_NUM_THREADS"] = "1"
    with workplace() as here:
        data = prepare("digits", here / "digits", writer="raw")
        argv, killed = (arguments(here / name, data, options.images) for name in ("whole", "killed"))
        assert sweep(argv) == 0
        planned = plan_sweep(read_sweep_request(argv).spec)
        expected = sum(1 for _ in planned.tree.epoch_nodes())
        with Store.open(here / "whole" / "store", create=False) as store:
            measured = store.measurements()
        trained = sum(each.train_loss is not None for each in measured.values())
        print(f"undisturbed: {trained} epochs trained, {naive_epochs(planned.points)} if alone")
        assert (trained, len(measured) - trained) == (expected, len(planned.tree.probe_nodes))

        for _ in range(options.kills):
            kill_once(killed, draw)
        assert sweep(killed) == 0
        tables = [polars.read_parquet(here / name / "grid" / "results.parquet") for name in ("whole", "killed")]
        assert tables[0].equals(tables[1], null_equal=True)
        print(f"killed {options.kills} times: the same results")

        numbers = 0
        for i, (point, where) in enumerate(zip(planned.points, planned.places, strict=True)):
            (here / "point.yaml").write_text(to_yaml(point.config))
            place = [f"--run.directory={here}", f"--run.name=point-{i}"]
            assert train(["--config", str(here / "point.yaml"), *place]) == 0
            lines = (here / f"point-{i}" / "metrics.jsonl").read_text().splitlines()
            alone = [json.loads(line) for line in lines]
            assert alone == point_rows(point, where, measured), point
            numbers += sum(isinstance(value, float) for row in alone for value in row.values())
        print(f"{len(planned.points)} points run alone: {numbers} numbers equal to the bit")


if __name__ == "__main__":
    main()
