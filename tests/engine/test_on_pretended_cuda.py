"""All that runs on a GPU, on a pretended one: devices, reads by the host, captures, and how much is launched.

Without values: numbers are compared elsewhere, by the same code on a CPU and by the Triton kernels, interpreted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretended_cuda import Graph, Refused
from trained_networks import AUGMENT, BATCH, CONFIG, NETWORKS, SIZE, build

from fastwi.analysis import (
    Evaluator,
    Recomputation,
    el2n_scores,
    ensemble_scores,
    evaluate_blocks,
    evaluate_line,
    function_distances,
    split_scores,
    tangent_departure,
    weight_distances,
)
from fastwi.config.schema import EngineConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Engine, Epoch
from fastwi.engine.captured import SHARE_OF_MEMORY
from fastwi.engine.choose import ENGINES
from fastwi.models.registry import build_model
from fastwi.population import Layout, Population

OPTIMIZERS = {
    "momentum": OptimizerConfig(BATCH, 0.05, 0.9, 1e-3),
    "nesterov": OptimizerConfig(BATCH, 0.05, 0.9, 1e-3, True),
    "plain": OptimizerConfig(BATCH, 0.05, 0.0, 0.0),
}


IMAGES = 2 * BATCH + 1  # two steps
# torch.autocast, by which `loop` and `graph` run networks of other modules, has no form for a pretended device.
NETWORKS_OF = [
    (engine, network, precision)
    for engine in ("loop", "graph", "stacked")
    for network in NETWORKS
    for precision in ("fp32", "bf16", "fp16")
    if network == "residual" or precision == "fp32" or (engine, precision) == ("stacked", "bf16")
]


def model_of(network: str) -> torch.nn.Module:
    return build(network, 0) if network in NETWORKS else build_model(network, 10)


def make(engine: str, network: str, precision: str, optimizer: OptimizerConfig, **more: Any) -> Engine:
    config = EngineConfig(device="cuda", precision=precision, backend="eager", evaluation_batch=8, **more)
    return ENGINES[engine](model_of(network), dataclasses.replace(CONFIG, engine=config, optimizer=optimizer))


def dataset(images: int = IMAGES) -> ResidentDataset:
    pixels = torch.zeros(images, SIZE, SIZE, 3, dtype=torch.uint8, device="cuda")
    labels = torch.zeros(images, dtype=torch.int64, device="cuda")
    return ResidentDataset(pixels, labels, torch.zeros(3, 256, device="cuda"), 10)


def population(network: str, members: int) -> Population:
    return Population.zeros(Layout.of(model_of(network)), members, "cuda")


@pytest.mark.parametrize(("engine", "network", "precision"), NETWORKS_OF)
def test_an_engine_reads_results_alone(cuda, engine, network, precision):
    """Two epochs, evaluation and statistics: the host waits at the end of each, and `loop` in fp16 for each step."""
    made, data, members = make(engine, network, precision, OPTIMIZERS["momentum"]), dataset(), population(network, 2)
    for epoch in range(2):
        made.train_epoch(members, data, [Noise(m) for m in range(2)], epoch)
    a_step = 2 if precision == "fp16" else 0
    assert len(cuda.reads) == 2 * (2 * (1 + a_step) if engine == "loop" else 1)
    if engine != "loop":
        (graph,) = cuda.graphs
        assert graph.replays == 4
    cuda.reads.clear()
    made.evaluate(members, data)
    assert len(cuda.reads) == 1
    recomputed = made.recompute_statistics(members, data, [Noise(m) for m in range(2)], 0)
    assert recomputed.device == members.device
    assert len(cuda.reads) == 1  # of evaluation


@pytest.mark.parametrize("engine", ["stacked", "halo"])
def test_members_pass_forward_together_as_memory_allows(cuda, engine, monkeypatch):
    """Five, where memory beside the programs holds two; the size of a batch is not that of the portion left over."""
    made, data, members = make(engine, "residual", "bf16", OPTIMIZERS["plain"]), dataset(), population("residual", 5)
    monkeypatch.setattr(made, "evaluation_batch", lambda _, together: 8 if together == 5 else 16)
    free, passed = [2.9 * 2**30 / SHARE_OF_MEMORY], list[tuple[int, int]]()  # a member takes 2^30 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free[0]), 80 * 2**30))
    found = {(rows.start, len(logits)) for rows, _, logits in made._all_logits(members, data)}
    assert found == {(0, 2), (2, 2), (4, 1)}
    assert {len(at) for _, at, _ in made._all_logits(members, data)} == {8, IMAGES - 8}
    forward = made._stacked_forward  # type: ignore[attr-defined]

    def watched(tensors: Any, x_MNHWC: torch.Tensor, **more: Any) -> torch.Tensor:
        passed.append(x_MNHWC.shape[:2])
        return forward(tensors, x_MNHWC, **more)

    monkeypatch.setattr(made, "_stacked_forward", watched)
    made.recompute_statistics(members, data, [Noise(m) for m in range(5)], 0)
    assert passed[:2] == [(1, BATCH)] * 2  # measured
    assert {at_once for at_once, _ in passed[2:]} == {2, 1}
    free[0] *= 2
    made.train_epoch(members, data, [Noise(m) for m in range(5)], 0)  # a program takes memory: measured again
    assert {len(logits) for _, _, logits in made._all_logits(members, data)} == {5}


# Of a step of two members in bf16. Those of `stacked` are of any number; `graph` has 321 with torch 2.14.
LAUNCHES = {("stacked", "resnet20"): 196, ("graph", "resnet20"): 361, ("halo", "resnet20"): 179}
STEPS_OF = [each for each in NETWORKS_OF if each[0] != "loop"]
STEPS_OF += [(engine, "resnet20", "bf16") for engine in ("graph", "stacked", "halo")]
STEPS_OF += [("stacked", "wrn16_4", "fp16"), ("halo", "residual", "fp32")]


@pytest.mark.parametrize(
    ("engine", "network", "precision", "optimizer"),
    [(*each, "momentum") for each in STEPS_OF]
    + [("graph", "residual", "bf16", "nesterov"), ("stacked", "residual", "bf16", "nesterov")]
    + [("graph", "residual", "fp32", "plain"), ("stacked", "residual", "fp16", "plain")],
)
def test_every_step_of_a_program_is_the_same(cuda, engine, network, optimizer, precision):
    """Steps of one epoch and of another, with other draws and rates: a graph of one would do for all."""
    made, data, members = make(engine, network, precision, OPTIMIZERS[optimizer]), dataset(), population(network, 2)
    made.train_epoch(members, data, [Noise(0), Noise(1)], 0)
    (program,) = made._programs.values()  # type: ignore[attr-defined]

    def launches() -> list[Any]:
        graph = Graph()
        with cuda.capture(graph):
            program._run(BATCH)
        return graph.launches

    first = launches()
    assert len(first) <= LAUNCHES.get((engine, network), 10**9)
    assert launches() == first
    assert cuda.graphs[0].launches == first
    epoch = Epoch(data, [Noise(2), Noise(3)], 4, lambda _: None, 2 * BATCH)
    draws = made._stacked_draws(epoch.noises, epoch)  # type: ignore[attr-defined]
    program.load(members, *draws, torch.full((2,), 0.3, device="cuda"))
    assert launches() == first
    for matrix in program.state.members.matrices:  # compiled code copies what is less aligned than the first row
        assert not matrix.shape[1] or (matrix.stride(0) * matrix.element_size()) % 16 == 0


def test_a_tensor_left_on_the_cpu_fails(cuda):
    """Of the dataset and of the population, in evaluation and in a step."""
    made, data, members = (
        make("stacked", "residual", "fp32", OPTIMIZERS["plain"]),
        dataset(),
        population("residual", 2),
    )
    labels, table = torch.zeros(IMAGES, dtype=torch.int64), torch.zeros(3, 256)
    for left in (dataclasses.replace(data, labels_N=labels), dataclasses.replace(data, table_C256=table)):
        with pytest.raises(Refused, match="on the CPU"):
            made.evaluate(members, left)
    with pytest.raises(Refused, match="on the CPU"):
        made.train_epoch(members, dataclasses.replace(data, table_C256=table), [Noise(0)] * 2, 0)
    there = Population.zeros(members.layout, 2)
    with pytest.raises(Refused, match="on the CPU"):
        made.evaluate(there, data)


def test_operations_on_populations(cuda):
    """None reads from the GPU but those whose result is the host's."""
    members = population("residual", 4)
    others = members.clone_rows([0, 2, 1])
    members.interpolation([(0, 1), (2, 3)], 0.25, momentum="average")()
    members.lerp_rows_([(0, 1), (1, 2)], [0.5, 1.0], others, "keep")
    members.combine([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], "average")
    Population.averages([[(members, 0), (others, 1)]], [[0.5, 0.5]], "keep", into=others[2:])
    Population.gather([(others, 0), (members, 3)], into=members[:2])
    members[1:3].load_state_dict(0, build("residual", 1).state_dict())
    assert cuda.reads == []
    assert cuda.counts()["interpolate_kernel"] > 0
    assert cuda.counts()["combine_kernel"] == 3 + 3
    members.finite_M()
    assert members.to("cpu").device.type == "cpu"
    assert len(cuda.reads) == 1 + 4
    for name, made in {**others.state_dict(1), **others.momentum(1)}.items():
        assert made.is_cuda, name


@pytest.mark.parametrize(("momentum", "kernels"), [("reset", 2), ("average", 3), ("keep", 3)])
def test_a_planned_interpolation_launches_no_more_than_it_has_to(cuda, momentum, kernels):
    """A kernel for each matrix, and what zeros momentum and settles counters. Nothing is copied to the device."""
    plan = population("resnet20", 8).interpolation([(0, 1), (4, 2)], [0.5, 1.0], population("resnet20", 3), momentum)
    for _ in range(2):
        cuda.launches.clear()
        plan()
        assert cuda.counts()["interpolate_kernel"] == kernels
        assert len(cuda.launches) <= 9
        assert cuda.counts()["_to_copy"] == 0
        assert cuda.reads == []


@pytest.mark.parametrize("engine", ["graph", "stacked"])
def test_analyses(cuda, engine):
    """Each runs on the GPU, and reads results alone: as often of a larger dataset."""
    config = EngineConfig(name=engine, device="cuda", precision="fp32", backend="eager", evaluation_batch=8)
    evaluator = Evaluator(build("residual", 0), config, batch_size=BATCH, augment=AUGMENT)
    members, both = population("residual", 3), ("averaged", "recomputed")

    def reads(images: int) -> list[int]:
        data, counts = dataset(images), list[int]()
        splits, again = {"test": data}, Recomputation(data)
        analyses: list[Callable[[], object]] = [
            lambda: evaluate_line(evaluator, members[:2], splits, [0, 0.5, 1], treatments=both, recomputation=again),
            lambda: evaluate_blocks(evaluator, members[:2], splits, [0.5]),
            lambda: weight_distances(members[:2], members[2:]),
            lambda: function_distances(evaluator, members, data),
            lambda: tangent_departure(evaluator, members[:2], members[2:], data),
            lambda: split_scores(evaluator, members, data, [m % 2 for m in range(images)]),
            lambda: ensemble_scores(evaluator, members, data),
            lambda: el2n_scores(evaluator, members, data),
        ]
        for analyse in analyses:
            cuda.reads.clear()
            analyse()
            counts.append(len(cuda.reads))
        return counts

    few = reads(BATCH)
    assert min(few) > 0
    assert reads(2 * BATCH) == few  # of two evaluation batches, not of one
