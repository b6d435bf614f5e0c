"""One block at a time: what moves, what stays, and closed forms."""

import json

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, closed_form, constant_images
from torch import nn

from fastwi.analysis import Evaluator, Recomputation, blocks_of, dataset_from_arrays, evaluate_blocks
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Layout, Population


class _Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))


class ThreeBlocks(nn.Module):
    """cost = (x + 2 y)^2 + z^2, from two children and a parameter of its own: see analytic_networks."""

    def __init__(self, x: float, y: float, z: float) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(z))
        self.x, self.xy = _Scalar(x), nn.ModuleDict({"y": _Scalar(y)})

    def forward(self, images_NCHW):
        cost = (self.x.w + 2 * self.xy["y"].w) ** 2 + self.z**2
        q_N = 0.05 + images_NCHW.mean(dim=(1, 2, 3)) * cost
        z_N = -torch.log(torch.expm1(q_N))
        return torch.stack([z_N, torch.zeros_like(z_N)], dim=1)


def cost(x, y, z):
    return (x + 2 * y) ** 2 + z**2


A, B = (0.2, 0.3, 0.5), (-0.4, 0.6, 1.1)
ALPHAS = [0.0, 0.3, 1.0, 1.5]


def pair_of_three():
    return Evaluator(ThreeBlocks(*A), PLAIN), Population.from_modules([ThreeBlocks(*A), ThreeBlocks(*B)])


def test_blocks_have_their_closed_form_in_both_directions():
    evaluator, population = pair_of_three()
    found = evaluate_blocks(evaluator, population, {"test": constant_images()}, ALPHAS)
    assert found.blocks == ("z", "x", "xy")
    for d, (rest, other) in enumerate(((A, B), (B, A))):
        for g, moved in enumerate((2, 0, 1)):
            for place, alpha in enumerate(ALPHAS):
                w = list(rest)
                w[moved] = (1 - alpha) * rest[moved] + alpha * other[moved]
                loss, error = closed_form(cost(*w))
                assert found.loss["test"]["averaged"][d, g, place] == pytest.approx(loss, rel=1e-5)
                assert found.error["test"]["averaged"][d, g, place] == pytest.approx(error, abs=100 / 21 + 1e-9)
    own = evaluator.scores(population, constant_images()).loss_M
    for d in range(2):
        assert set(found.loss["test"]["averaged"][d, :, 0]) == {own[d]}
    swapped = evaluate_blocks(evaluator, population, {"test": constant_images()}, ALPHAS, ends=(1, 0), memory_bytes=1)
    assert np.array_equal(swapped.loss["test"]["averaged"], found.loss["test"]["averaged"][::-1])


def test_groups_and_rows():
    evaluator, population = pair_of_three()
    groups = {"both": ["x.w", "xy"], "everything": ["x", "xy", "z"]}
    found = evaluate_blocks(evaluator, population, {"test": constant_images()}, [0.5, 1.0], groups=groups)
    both = closed_form(cost((A[0] + B[0]) / 2, (A[1] + B[1]) / 2, A[2]))[0]
    assert found.loss["test"]["averaged"][0, 0, 0] == pytest.approx(both, rel=1e-5)
    own = evaluator.scores(population, constant_images()).loss_M
    assert found.loss["test"]["averaged"][:, 1, 1].tolist() == own[::-1].tolist()
    rows = found.rows()
    assert [(row["rest"], row["block"], row["alpha"]) for row in rows[:3]] == [
        ("A", "both", 0.5), ("A", "both", 1.0), ("A", "everything", 0.5)
    ]  # fmt: skip
    assert rows[0]["test_loss_nats"] == found.loss["test"]["averaged"][0, 0, 0]
    assert rows[-1]["rest"] == "B"
    assert json.loads(json.dumps(rows)) == rows


def test_prefixes_end_at_a_dot():
    layout = Layout.of(build_model("resnet20", 10))
    assert [block.name for block in blocks_of(layout)] == ["conv", "bn", "blocks", "linear"]
    (block,) = blocks_of(layout, {"first": ["blocks.1"]})
    assert {span.name for span in block.parameters} == {f"blocks.1.conv{n}.weight" for n in (1, 2)} | {
        f"blocks.1.bn{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }
    assert {span.name for span in block.statistics} == {
        f"blocks.1.{norm}.running_{kind}" for norm in ("bn1", "bn2") for kind in ("mean", "var")
    }


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_statistics_move_with_their_block_alone(seed):
    networks = []
    for m in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed + m)
            network = Normed()
            network.norm.running_mean.normal_()
            network.norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(network.norm.weight)
        networks.append(network)
    images = np.random.default_rng(seed).integers(0, 256, (20, 5, 5, 3), dtype=np.uint8)
    dataset = dataset_from_arrays(images, np.arange(20) % 3, [0.5] * 3, [0.2] * 3, "cpu")
    evaluator = Evaluator(networks[0], PLAIN, batch_size=10)
    population = Population.from_modules(networks)
    found = evaluate_blocks(
        evaluator, population, {"test": dataset}, [0.4, 1.0],
        treatments=("averaged", "recomputed"), recomputation=Recomputation(dataset),
    )  # fmt: skip
    a, b = (network.state_dict() for network in networks)
    for g, block in enumerate(("conv", "norm", "linear")):
        expected = {key: a[key] + 0.4 * (b[key] - a[key]) if key.startswith(block + ".") else a[key] for key in a}
        expected["norm.num_batches_tracked"] = a["norm.num_batches_tracked"]
        mixed = Normed()
        mixed.load_state_dict(expected)
        one = Population.from_modules([mixed])
        for treatment, network in (("averaged", one), ("recomputed", evaluator.recompute(one, dataset))):
            loss = evaluator.scores(network, dataset).loss_M[0]
            assert found.loss["test"][treatment][0, g, 0] == pytest.approx(loss, rel=1e-5), (block, treatment)
        assert found.loss["test"]["averaged"][0, g, 0] != found.loss["test"]["recomputed"][0, g, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": {}}, "no block"),
        ({"groups": {"first": ["y"]}}, "'y'"),
        ({"groups": {"first": "x"}}, "list of parameter prefixes"),
        ({"groups": {"first": []}}, "list of parameter prefixes"),
        ({"alphas": []}, "alphas"),
        ({"ends": (0, 9)}, "member 9"),
        ({"treatments": ("own",)}, "own"),
    ],
)
def test_bad_input_gets_one_line(settings, words):
    evaluator, population = pair_of_three()
    arguments = {"splits": {"test": constant_images()}, "alphas": [0, 1], **settings}
    with pytest.raises(UserError, match=words) as caught:
        evaluate_blocks(evaluator, population, **arguments)
    assert "\n" not in str(caught.value)
