"""`python tests/campaigns/sweep.py`: the digits grid of configs/digits_k_s_grid.yaml under kill -9, point by point.

1. An undisturbed sweep; epochs counted from its measurements against the tree's.
2. Every one of its 36 points run alone through fastwi.train; every number equal to the bit.
3. The sweep again in a fresh store, killed (-9) at `--kills` random moments; the same results, and tasks begun twice
   counted. `kills.py` holds what a kill costs to its bound in time.

Too long for the suite; `--images` training images make it shorter than the whole set would.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars

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


def counts(directory: Path) -> tuple[int, int, int, int]:
    """Epochs measured, probes measured, tasks claimed, claims in all."""
    with Store.open(directory / "store", create=False) as store:
        found, attempts = store.measurements().values(), store.attempts()
    trained = sum(m.train_loss is not None for m in found)
    return trained, len(found) - trained, len(attempts), sum(attempts.values())


def kill_until(kills: int, argv: list[str], directory: Path, draw: random.Random) -> int:
    done = 0
    while done < kills:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastwi.sweep", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        if draw.random() < 0.9:
            process.stderr.readline()  # planned; else it is killed while it imports and plans
        time.sleep(draw.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the sweep ended before it was killed often enough"
        done += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        data = prepare("digits", here / "digits", writer="raw")
        argv = arguments(here / "whole", data, options.images)
        assert sweep(argv) == 0
        planned = plan_sweep(read_sweep_request(argv).spec)
        expected = sum(1 for _ in planned.tree.epoch_nodes())
        trained, probes, tasks, claims = counts(here / "whole")
        print(
            f"undisturbed: {trained} epochs trained, {expected} in the tree, {naive_epochs(planned.points)} if alone"
        )
        assert (trained, probes) == (expected, len(planned.tree.probe_nodes))
        assert tasks == claims == trained + probes
        whole = polars.read_parquet(here / "whole" / "grid" / "results.parquet")

        killed = arguments(here / "killed", data, options.images)
        kills = kill_until(options.kills, killed, here / "killed", random.Random(options.seed))
        assert sweep(killed) == 0
        assert polars.read_parquet(here / "killed" / "grid" / "results.parquet").equals(whole, null_equal=True)
        trained, probes, tasks, claims = counts(here / "killed")
        assert tasks == trained + probes == expected + len(planned.tree.probe_nodes)
        print(f"killed {kills} times: the same results; {claims - tasks} tasks begun again, of {tasks}")

        with Store.open(here / "whole" / "store", create=False) as store:
            measured = store.measurements()
        numbers = 0
        for i, (point, where) in enumerate(zip(planned.points, planned.places, strict=True)):
            (here / "point.yaml").write_text(to_yaml(point.config))
            name = f"point-{i}"
            assert (
                train(["--config", str(here / "point.yaml"), "--run.directory", str(here), "--run.name", name]) == 0
            )
            alone = [json.loads(line) for line in (here / name / "metrics.jsonl").read_text().splitlines()]
            assert alone == point_rows(point, where, measured), point
            numbers += sum(isinstance(value, float) for row in alone for value in row.values())
        print(f"{len(planned.points)} points run alone: {numbers} numbers equal to the bit")


if __name__ == "__main__":
    main()
