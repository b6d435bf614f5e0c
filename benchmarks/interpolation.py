"""Averages of pairs of ResNet20s: this project's ways beside what people use.

All cases average the same pairs, weights and batch-norm statistics, at alpha = 1/2; each is held to a float64
reference before anything is timed, and left out where it is off. Inputs are restored before every run, untimed.
--match: only cases with this in their names, and fastwi rows; separate networks are made only if no way of rows has
it in its name. The floor is a copy's bandwidth over the 12 bytes of a float that must move.

On a GPU, --apart 1 adds a table of kernel and call apart: how long a call keeps the host, and what its kernels take
by torch.profiler, beside the copy's kernel. (On a CPU the profiler does not see fastwi's own kernels.)
"""

import functools
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.floor import copy_floor
from benchmarks.kernel_times import of_calls
from benchmarks.runner import GIGA, Case, Floor, Report, Run, benchmark
from fastwi.kernels.interpolate import RowInterpolation, lerp_lists_
from fastwi.models.registry import build_model
from fastwi.population import Population

ALPHA = 0.5
BYTES_PER_FLOAT = 12  # read a, read b, write the average
OURS = "fastwi rows"

State = dict[str, Tensor]
Way = tuple[Run, Run, Callable[[], Sequence[Tensor]], Sequence[Tensor]]
"""Resets the inputs; averages all pairs (this is timed); the averages; what they are exactly, float64."""


@benchmark
def main(
    report: Report, pairs: tuple[int, ...] = (256,), match: str = "", device: str = "auto", rounds: int = 15,
    apart: int = 0,
) -> None:  # fmt: skip
    """A table, or two, for each number of pairs."""
    for count in pairs:
        original = random_population(2 * count, report.device)
        every = row_ways(original)
        if not any(match in name for name in every) or not match:
            every |= network_ways(original)
        ways = {name: way for name, way in every.items() if match in name or name == OURS}
        floats = _packed([original.state_dict(0)])[0].numel()
        bytes_each = BYTES_PER_FLOAT * floats
        floor = copy_floor(report.device, bytes_each)
        at = {"pairs": count} if len(pairs) > 1 else {}
        title = f"Averages of pairs of {floats:,} floats; {count} pairs"
        cases = {name: functools.partial(checked, name, way, count) for name, way in ways.items()}
        ran = report.time(
            title, "pairs", cases, rounds, reference=[OURS], again=OURS, each={"GB": bytes_each / GIGA},
            floors=[floor], at=at,
        )  # fmt: skip
        if apart and report.device.type == "cuda":
            with report.attempt("kernel and call apart"):
                right = {name: way for name, way in ways.items() if name in ran}
                rows = kernel_and_call(right, floor, count, report.device)
                report.add(f"{title}: kernel and call apart", rows, [row | at for row in rows])


def checked(name: str, way: Way, count: int) -> Case:
    """A way as a case. RuntimeError where its averages are not the exact ones to the rounding of float32."""
    restore, run, result, exact = way
    restore()
    run()
    error = max(float((found - wanted).abs().max()) for found, wanted in zip(result(), exact, strict=True))
    if not error < 1e-5:
        raise RuntimeError(f"{name} is off by {error:.2g}")
    return Case(run, count, restore)


def kernel_and_call(ways: Mapping[str, Way], floor: Floor, count: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each way: milliseconds of the host and of the kernels in a call, pairs/s of the kernels alone."""
    (copy,) = floor.runs.values()
    times = of_calls({"copy": copy} | {name: run for name, (_, run, *_) in ways.items()}, device)
    copied_per_s = floor.rate({"copy": [times.pop("copy")[1]]})
    return [
        {
            "case": name, "host_ms": 1e3 * host, "kernels_ms": 1e3 * kernels, "kernels_a_call": launches,
            "kernel_pairs_per_s": count / kernels, "of_copy_kernel_%": 100 * count / kernels / copied_per_s,
        }
        for name, (host, kernels, launches) in times.items()
    ]  # fmt: skip


def random_population(members: int, device: torch.device) -> Population:
    """ResNet20s of random weights and statistics, all different."""
    population = Population.from_modules([build_model("resnet20", 10)], device).clone_rows([0] * members)
    population.weights_MP.normal_()
    population.statistics_MQ.normal_()
    return population


def row_ways(original: Population) -> dict[str, Way]:
    """Ways to average rows of a population: pairs (0, 1), (2, 3) and so on, or scattered ones, in place or not."""
    M = original.members
    a_L, b_L = list(range(0, M, 2)), list(range(1, M, 2))
    # The same networks in rows drawn at random, so that no two pairs are evenly spaced.
    order = random.Random(1).sample(range(M), M)
    scattered_a_L, scattered_b_L = ([order.index(m) for m in rows] for rows in (a_L, b_L))
    scattered_original, scattered = original.clone_rows(order), original.clone_rows(order)
    working = original.clone_rows(range(M))
    exact = exactly(of_rows(original, a_L), of_rows(original, b_L))

    def rows_(population: Population, a_L: Sequence[int], b_L: Sequence[int]) -> None:
        for x_MP in (population.weights_MP, population.statistics_MQ):
            RowInterpolation(x_MP, a_L, b_L, ALPHA)()

    planned = [RowInterpolation(x_MP, a_L, b_L, ALPHA) for x_MP in (working.weights_MP, working.statistics_MQ)]

    def one_at_a_time() -> None:
        for x_MP in (working.weights_MP, working.statistics_MQ):
            for a, b in zip(a_L, b_L, strict=True):
                x_MP[a].lerp_(x_MP[b], ALPHA)

    def gathered() -> None:
        for x_MP in (working.weights_MP, working.statistics_MQ):
            x_MP[a_L] = torch.lerp(x_MP[a_L], x_MP[b_L], ALPHA)

    def restore(target: Population, source: Population) -> None:
        target.weights_MP.copy_(source.weights_MP)
        target.statistics_MQ.copy_(source.statistics_MQ)

    in_order: dict[str, Run] = {
        OURS: lambda: rows_(working, a_L, b_L),
        "fastwi rows, planned": lambda: [interpolate() for interpolate in planned],
        "fastwi Population.lerp_rows_": lambda: working.lerp_rows_(list(zip(a_L, b_L, strict=True)), ALPHA),
        "fastwi Population.interpolation": working.interpolation(list(zip(a_L, b_L, strict=True)), ALPHA),
        "torch.lerp_, row by row": one_at_a_time,
        "torch.lerp, rows gathered": gathered,
    }
    restored = functools.partial(restore, working, original)
    ways: dict[str, Way] = {
        name: (restored, run, lambda: of_rows(working, a_L), exact) for name, run in in_order.items()
    }
    ways["fastwi rows, scattered pairs"] = (
        lambda: restore(scattered, scattered_original),
        lambda: rows_(scattered, scattered_a_L, scattered_b_L),
        lambda: of_rows(scattered, scattered_a_L),
        exact,
    )
    # Into other rows than the pairs', which therefore need not be restored.
    averages = Population.zeros(original.layout, len(a_L), original.device)
    pairs = [[(original, a), (original, b)] for a, b in zip(a_L, b_L, strict=True)]
    weights = [[1 - ALPHA, ALPHA]] * len(pairs)
    for name, momentum in (("fastwi averages", None), ("fastwi averages, momentum reset", "reset")):
        run = functools.partial(Population.averages, pairs, weights, momentum, averages)
        ways[name] = (lambda: None, run, lambda: of_rows(averages, list(range(len(pairs)))), exact)
    return ways


def of_rows(population: Population, rows: Sequence[int]) -> list[Tensor]:
    """Weights and statistics of some members."""
    return [population.weights_MP[rows], population.statistics_MQ[rows]]


def exactly(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """The averages, in float64."""
    return [x.double().lerp_(y.double(), ALPHA) for x, y in zip(a, b, strict=True)]


def network_ways(original: Population) -> dict[str, Way]:
    """Ways to average separate modules. Lists of tensors and state dicts are made beforehand, untimed."""
    networks = []
    for m in range(original.members):
        networks.append(build_model("resnet20", 10).to(original.device))
        original.write_to(m, networks[m])
    averaged = [AveragedModel(network, use_buffers=True) for network in networks[::2]]
    a_states, b_states = ([_live(network) for network in networks[first::2]] for first in (0, 1))
    averaged_states = [_live(average.module) for average in averaged]
    a_tensors, b_tensors, averaged_tensors = (
        [tensor for state in states for tensor in state.values()] for states in (a_states, b_states, averaged_states)
    )
    sources = [tensor.clone() for tensor in a_tensors]
    exact = exactly(_packed(a_states), _packed(b_states))
    new: list[State] = []

    def new_dicts() -> None:
        new.clear()
        for a, b in zip(a_states, b_states, strict=True):
            new.append({key: (1 - ALPHA) * a[key] + ALPHA * b[key] for key in a})

    def in_place_dicts() -> None:
        for a, b in zip(a_states, b_states, strict=True):
            for key in a:
                a[key].lerp_(b[key], ALPHA)

    def foreach_each() -> None:
        for a, b in zip(a_states, b_states, strict=True):
            torch._foreach_lerp_(list(a.values()), list(b.values()), ALPHA)

    def averaged_models() -> None:
        for average, network in zip(averaged, networks[1::2], strict=True):
            average.update_parameters(network)

    def restore() -> None:
        torch._foreach_copy_(a_tensors, sources)
        torch._foreach_copy_(averaged_tensors, sources)
        for average in averaged:
            average.n_averaged.fill_(1)  # the average of one network so far: the pair's first

    ways: dict[str, tuple[Run, Sequence[State]]] = {
        "fastwi lerp_lists_": (lambda: lerp_lists_(a_tensors, b_tensors, ALPHA), a_states),
        "torch._foreach_lerp_, all networks": (lambda: torch._foreach_lerp_(a_tensors, b_tensors, ALPHA), a_states),
        "torch._foreach_lerp_, a call a pair": (foreach_each, a_states),
        "state dicts, lerp_ in a loop": (in_place_dicts, a_states),
        "state dicts, new ones in a loop": (new_dicts, new),
        "AveragedModel": (averaged_models, averaged_states),
    }
    return {name: (restore, run, functools.partial(_packed, states), exact) for name, (run, states) in ways.items()}


def _live(network: nn.Module) -> State:
    """The live weights and statistics by state-dict key."""
    return {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}


def _packed(states: Sequence[State]) -> list[Tensor]:
    """All floats of each state dict, in its order: one tensor [networks, floats]."""
    flat = [torch.cat([x.flatten() for x in state.values() if x.is_floating_point()]) for state in states]
    return [torch.stack(flat)]


if __name__ == "__main__":
    sys.exit(main())
