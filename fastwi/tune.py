"""`python -m fastwi.tune`: measure which engine is the fastest on this device, for `engine.name: auto`.

Trains networks on random images, a few seconds for each engine and number of members, and keeps the table in the
user's cache directory. Takes under two minutes; what there is no time for is left out, and reported.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from fastwi.cli import command
from fastwi.config.schema import Config
from fastwi.files import to_json

if TYPE_CHECKING:
    import torch

    from fastwi.engine.base import Engine

_DESCRIPTION = (
    "Measure the images/s of each engine on this device, for the network, batch and precision of the configuration, "
    "on random images of 32 x 32 pixels; engine.name: auto then takes the fastest."
)
BUDGET_S = 105.0  # of two minutes; imports take the rest
LEAST_S, STEPS = 1.0, 8  # a measurement runs rounds of so many steps for at least so long
LATE = "no time left"
MEMBERS = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64, 256)}


@dataclass(frozen=True)
class Measured:
    """One engine at one number of members: images/s, or why there are none."""

    engine: str
    members: int
    images_per_s: float | None
    why: str = ""


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 done, 2 bad configuration or use, 130 interrupted."""
    from fastwi.config.read import read_request  # imports fastargs, which `measure` does not need

    request = read_request(argv, "fastwi.tune", _DESCRIPTION)
    from fastwi.data.resident import random_images
    from fastwi.engine.choose import build_network, entry_key, fastest, table_path, write_speeds
    from fastwi.engine.device import resolve_device, resolve_dtype
    from fastwi.report.progress import Progress

    # Speeds do not depend on weights, which may be for another number of classes.
    config = replace(request.config, model=replace(request.config.model, weights=""))
    device, dtype = resolve_device(config.engine.device), resolve_dtype(config.engine)
    key = entry_key(config, device, dtype)
    images = random_images(1, device)
    build_network(config, images.classes, images.image_shape[:2])  # what is no network is refused, not measured
    if request.flags.dry_run:
        print(to_json({"key": key, "table": str(table_path())}) if request.flags.json else key)
        return 0
    rows: list[Measured] = []
    speeds: dict[str, dict[int, float]] = {}
    with Progress("tuning") as progress:
        for row, spent_s in measure(config, device):
            rows.append(row)
            if row.images_per_s is not None:
                speeds.setdefault(row.engine, {})[row.members] = row.images_per_s
            progress.show(round(spent_s), round(BUDGET_S))
    ignored = config.engine.deterministic  # whose kernels are slower
    if speeds and not ignored:  # else an earlier measurement stays
        write_speeds(key, speeds)
    if request.flags.json:
        print(to_json({"key": key, "table": str(table_path()), "measured": list(map(asdict, rows))}, indent=1))
        return 0
    print(key)
    print(f"{'engine':<10}{'members':>8}  images/s")
    for row in rows:
        print(f"{row.engine:<10}{row.members:>8}  {row.why if row.why else f'{row.images_per_s:,.0f}'}")
    best = fastest(speeds)
    if ignored:
        print("engine.name: auto ignores speeds where engine.deterministic is on, so they are not kept")
    elif best is not None:
        print(f"engine.name: auto takes {best[0]} here; kept in {table_path()}")
    return 0


def measure(config: Config, device: "torch.device", budget_s: float = BUDGET_S) -> Iterator[tuple[Measured, float]]:
    """Measure every engine at every number of members; yields each result and the seconds spent so far.

    An engine that fails on this device is left out with its error's first line, and not tried with more members.
    """
    from fastwi.engine.choose import ENGINES

    begun, failed = time.monotonic(), set()
    for members in MEMBERS[device.type]:
        for name, kind in ENGINES.items():
            if name in failed or device.type not in kind.tuned_on:
                continue
            row = Measured(name, members, None, LATE)
            if time.monotonic() - begun <= budget_s:
                try:
                    row = Measured(name, members, _speed(kind, config, device, members))
                except Exception as error:  # whatever stops an engine here is a reason not to choose it
                    failed.add(name)
                    row = Measured(name, members, None, (str(error).splitlines() or [repr(error)])[0][:200])
            yield row, time.monotonic() - begun


def _speed(kind: "type[Engine]", config: Config, device: "torch.device", members: int) -> float:
    """Images/s of training, after a round that compiles and fills caches."""
    from fastwi.data.noise import Noise
    from fastwi.data.resident import random_images
    from fastwi.engine.choose import build_network
    from fastwi.engine.device import free_memory
    from fastwi.population import Population

    free_memory(device)  # of the engine before
    images = STEPS * config.optimizer.batch_size
    dataset = random_images(images, device)
    network = build_network(config, dataset.classes, dataset.image_shape[:2])
    engine = kind(network, config)
    population = Population.from_modules([network], device=device).clone_rows([0] * members)
    noises = [Noise(m) for m in range(members)]
    engine.train_epoch(population, dataset, noises, 0)
    rounds, begun = 0, time.monotonic()
    while rounds == 0 or time.monotonic() - begun < LEAST_S:
        engine.train_epoch(population, dataset, noises, rounds)  # its losses are read, so the device is done
        rounds += 1
    return rounds * members * images / (time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
