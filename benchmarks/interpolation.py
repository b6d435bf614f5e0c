"""Averages of pairs of ResNet20s: this project's ways beside what people use. `--help` lists the options.

All contestants average the same pairs, weights and batch-norm statistics, at alpha = 1/2; each is held to a
float64 reference before anything is timed. Inputs are restored before every run, untimed.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.machine import GIGA, CopyTask, describe_machine, pick_device
from benchmarks.options import parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.timing import Timing, interleave
from fastwi.kernels.interpolate import interpolate_rows_, lerp_lists_
from fastwi.models.registry import build_model
from fastwi.population import Population

ALPHA = 0.5
BYTES_PER_FLOAT = 12  # read a, read b, write the average


@dataclass(frozen=True)
class Contestant:
    """One way to average all pairs: `restore` resets the inputs, `run` is timed, `result` [pairs, floats]."""

    restore: Callable[[], object]
    run: Callable[[], object]
    result: Callable[[], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interpolation", description=__doc__)
    parser.add_argument("--pairs", type=int, default=256, help="pairs of networks (default: 256)")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each contestant (default: 15)")
    parser.add_argument("--match", default="", help="only contestants with this in their names, and fastwi rows")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--out", type=Path, help="write interpolation-DEVICE.json and .png into this directory")
    options = parse(parser, arguments, {"pairs": 16, "rounds": 5})
    if options.pairs < 1 or options.rounds < 1:
        parser.error("--pairs and --rounds must be at least 1")
    device = pick_device(options.device)

    original = random_population(2 * options.pairs, device)
    everyone = row_contestants(original) | network_contestants(original)
    contestants = {name: one for name, one in everyone.items() if options.match in name or name == "fastwi rows"}
    floats = verify(contestants, original)
    moved_bytes = BYTES_PER_FLOAT * floats * options.pairs
    copies = {"large": CopyTask.of(device), "same size": CopyTask.of(device, moved_bytes // 2)}
    runs = {name: contestant.run for name, contestant in contestants.items()}
    timings = interleave(
        runs | {name: copy.run for name, copy in copies.items()},
        options.rounds,
        device,
        {name: contestant.restore for name, contestant in contestants.items()},
    )
    large_gbps, same_size_gbps = (copy.bandwidth_gbps(timings[name]) for name, copy in copies.items())
    measurements = [
        measurement(name, timings[name], timings["fastwi rows"], options.pairs, moved_bytes, large_gbps)
        for name in contestants
    ]

    machine = describe_machine(device)
    print_machine(machine)
    print(f"copy bandwidth: {large_gbps:.1f} GB/s of large buffers, {same_size_gbps:.1f} GB/s of this size")
    title = f"{options.pairs} pairs of {floats:,} floats, median of {options.rounds} interleaved runs"
    columns = ("contestant", "pairs/s", "quartiles", "fastwi rows is", "GB/s", "% of copy")
    print_table(title, columns, [words(entry) for entry in measurements])
    settings = {
        "pairs": options.pairs,
        "floats_per_network": floats,
        "rounds": options.rounds,
        "copy_large_GB_per_s": large_gbps,
        "copy_same_size_GB_per_s": same_size_gbps,
    }
    targets = [options.json] if options.json else []
    if options.out:
        targets.append(options.out / f"interpolation-{device.type}.json")
        bars = {
            entry["contestant"]: (entry["pairs_per_s"], *entry["pairs_per_s_quartiles"]) for entry in measurements
        }
        copy_rate = large_gbps * GIGA / (BYTES_PER_FLOAT * floats)
        floor = (f"copy bandwidth, {large_gbps:.0f} GB/s", copy_rate)
        plot_bars(options.out / f"interpolation-{device.type}.png", title, "pairs/s", bars, floor)
    for path in targets:
        write_results(path, "interpolation", machine, settings, measurements)


def random_population(members: int, device: torch.device) -> Population:
    """ResNet20s of random weights and statistics, all different."""
    population = Population.from_modules([build_model("resnet20", 10)], device).clone_rows([0] * members)
    for m in range(members):
        for view in (*population.parameters(m).values(), *population.buffers(m).values()):
            if view.is_floating_point():
                view.normal_()
    return population


def row_contestants(original: Population) -> dict[str, Contestant]:
    """Ways to average rows of a population: pairs (0, 1), (2, 3) and so on, or scattered ones, in place or not."""
    working = original.clone_rows(range(original.members))
    a_L, b_L = list(range(0, original.members, 2)), list(range(1, original.members, 2))
    matrices = (working.weights_MP, working.statistics_MQ)
    # The same networks in rows drawn at random, so that no two pairs are evenly spaced.
    places = random.Random(1).sample(range(original.members), original.members)
    row_of = [places.index(m) for m in range(original.members)]
    scattered_a_L, scattered_b_L = [row_of[a] for a in a_L], [row_of[b] for b in b_L]
    scattered_original = original.clone_rows(places)
    scattered = original.clone_rows(places)

    def one_at_a_time() -> None:
        for x_MP in matrices:
            for a, b in zip(a_L, b_L, strict=True):
                x_MP[a].lerp_(x_MP[b], ALPHA)

    def gathered() -> None:
        for x_MP in matrices:
            x_MP[a_L] = torch.lerp(x_MP[a_L], x_MP[b_L], ALPHA)

    def fastwi_rows() -> None:
        for x_MP in matrices:
            interpolate_rows_(x_MP, a_L, b_L, ALPHA)

    def fastwi_scattered() -> None:
        for x_MP in (scattered.weights_MP, scattered.statistics_MQ):
            interpolate_rows_(x_MP, scattered_a_L, scattered_b_L, ALPHA)

    def restore(target: Population, source: Population) -> None:
        target.weights_MP.copy_(source.weights_MP)
        target.statistics_MQ.copy_(source.statistics_MQ)

    def result(population: Population, rows: Sequence[int]) -> Tensor:
        return packed([population.state_dict(row) for row in rows])

    in_order = {
        "fastwi rows": fastwi_rows,
        "fastwi rows, again": fastwi_rows,
        "fastwi Population.lerp_rows_": lambda: working.lerp_rows_(list(zip(a_L, b_L, strict=True)), ALPHA),
        "torch.lerp_, row by row": one_at_a_time,
        "torch.lerp, rows gathered": gathered,
    }
    contestants = {
        name: Contestant(partial(restore, working, original), run, partial(result, working, a_L))
        for name, run in in_order.items()
    }
    contestants["fastwi rows, scattered pairs"] = Contestant(
        partial(restore, scattered, scattered_original),
        fastwi_scattered,
        partial(result, scattered, scattered_a_L),
    )
    # Into other rows than the pairs', which therefore need not be restored.
    averages = Population.zeros(original.layout, len(a_L), original.device)
    pairs = [[(original, a), (original, b)] for a, b in zip(a_L, b_L, strict=True)]
    weights = [[1 - ALPHA, ALPHA]] * len(pairs)
    for name, momentum in (("fastwi averages", None), ("fastwi averages, momentum reset", "reset")):
        contestants[name] = Contestant(
            lambda: None,
            partial(Population.averages, pairs, weights, momentum, averages),
            partial(result, averages, range(len(pairs))),
        )
    return contestants


def network_contestants(original: Population) -> dict[str, Contestant]:
    """Ways to average separate modules. Lists of tensors and state dicts are made beforehand, untimed."""
    networks = []
    for m in range(original.members):
        networks.append(build_model("resnet20", 10).to(original.device))
        original.write_to(m, networks[m])
    averages = [AveragedModel(network, use_buffers=True) for network in networks[::2]]
    a_states = [float_tensors(network) for network in networks[::2]]
    b_states = [float_tensors(network) for network in networks[1::2]]
    averaged_states = [float_tensors(average.module) for average in averages]
    a_tensors = [tensor for state in a_states for tensor in state.values()]
    b_tensors = [tensor for state in b_states for tensor in state.values()]
    fresh: list[dict[str, Tensor]] = []

    def new_dicts() -> None:
        fresh.clear()
        for a, b in zip(a_states, b_states, strict=True):
            fresh.append({key: (1 - ALPHA) * a[key] + ALPHA * b[key] for key in a})

    def in_place_dicts() -> None:
        for a, b in zip(a_states, b_states, strict=True):
            for key in a:
                a[key].lerp_(b[key], ALPHA)

    def foreach_each() -> None:
        for a, b in zip(a_states, b_states, strict=True):
            torch._foreach_lerp_(list(a.values()), list(b.values()), ALPHA)

    def averaged_models() -> None:
        for average, network in zip(averages, networks[1::2], strict=True):
            average.update_parameters(network)

    def restore_networks() -> None:
        fresh.clear()
        for place, state in enumerate(a_states):
            fill(state, original, 2 * place)

    def restore_averages() -> None:
        for place, (average, state) in enumerate(zip(averages, averaged_states, strict=True)):
            fill(state, original, 2 * place)
            average.n_averaged.fill_(1)  # the average of one network so far: the pair's first

    runs: dict[str, tuple[Callable[[], object], list[dict[str, Tensor]]]] = {
        "fastwi lerp_lists_": (lambda: lerp_lists_(a_tensors, b_tensors, ALPHA), a_states),
        "torch._foreach_lerp_, all networks": (
            lambda: torch._foreach_lerp_(a_tensors, b_tensors, ALPHA),
            a_states,
        ),
        "torch._foreach_lerp_, a call a pair": (foreach_each, a_states),
        "state dicts, lerp_ in a loop": (in_place_dicts, a_states),
        "state dicts, new ones in a loop": (new_dicts, fresh),
    }
    contestants = {
        name: Contestant(restore_networks, run, partial(packed, states)) for name, (run, states) in runs.items()
    }
    contestants["AveragedModel"] = Contestant(restore_averages, averaged_models, partial(packed, averaged_states))
    return contestants


def float_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The live weights and statistics by state-dict key."""
    return {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}


def fill(state: dict[str, Tensor], original: Population, m: int) -> None:
    """Put member m back into live tensors."""
    tensors = original.parameters(m) | original.buffers(m)
    torch._foreach_copy_(list(state.values()), [tensors[key] for key in state])


def packed(states: Sequence[dict[str, Tensor]]) -> Tensor:
    """All floats of each state dict, in its order: [networks, floats]."""
    return torch.stack(
        [torch.cat([tensor.flatten() for tensor in state.values() if tensor.is_floating_point()]) for state in states]
    )


def verify(contestants: dict[str, Contestant], original: Population) -> int:
    """Hold every contestant's averages to float64. Returns the floats of a network."""
    a_LF, b_LF = (packed([original.state_dict(m) for m in range(first, original.members, 2)]) for first in (0, 1))
    exact_LF = a_LF.double().add_(b_LF).mul_(0.5)
    for name, contestant in contestants.items():
        contestant.restore()
        contestant.run()
        error = float((contestant.result() - exact_LF).abs().max())
        if not error < 1e-5:
            raise AssertionError(f"{name} is off by {error:.2g}; nothing was measured")
    return a_LF.shape[1]


def measurement(
    name: str, timing: Timing, ours: Timing, pairs: int, moved_bytes: int, copy_gbps: float
) -> dict[str, Any]:
    """One contestant's numbers, units in the keys."""
    slow, fast = timing.quartiles_s[1], timing.quartiles_s[0]
    gbps = moved_bytes / timing.median_s / GIGA
    return {
        "contestant": name,
        "pairs_per_s": pairs / timing.median_s,
        "pairs_per_s_quartiles": [pairs / slow, pairs / fast],
        "pairs_per_s_range": [pairs / timing.range_s[1], pairs / timing.range_s[0]],
        "fastwi_rows_is_x_faster": timing.median_s / ours.median_s,
        "achieved_GB_per_s": gbps,
        "of_copy_%": 100 * gbps / copy_gbps,
        "seconds": list(timing.seconds),
    }


def words(entry: dict[str, Any]) -> tuple[str, ...]:
    """A measurement as a row of the table."""
    low, high = entry["pairs_per_s_quartiles"]
    return (
        entry["contestant"],
        f"{entry['pairs_per_s']:,.0f}",
        f"{low:,.0f} - {high:,.0f}",
        f"{entry['fastwi_rows_is_x_faster']:.2f} x",
        f"{entry['achieved_GB_per_s']:.1f}",
        f"{entry['of_copy_%']:.0f}",
    )


if __name__ == "__main__":
    main()
