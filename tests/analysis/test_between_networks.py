"""Line, barriers, plane and blocks against closed forms. Trained networks are in tests/studies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, Bowl, Costs, bowl_cost, closed_form, constant_images, population_of
from torch import nn

from fastwi.analysis import (
    Evaluator,
    Measured,
    Recomputation,
    barrier_between,
    barrier_of,
    block_groups,
    dataset_from_arrays,
    evaluate_blocks,
    evaluate_line,
    evaluate_plane,
    plane_points,
)
from fastwi.data.noise import Noise
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population

ALPHAS = [-0.75, -0.1, 0.0, 0.2, 0.5, 0.9, 1.0, 1.6]
BOTH = ("averaged", "recomputed")
SPLITS = {"test": constant_images()}


class Normed(nn.Module):
    """A convolution and two batch norms."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv, self.norm, self.after = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for norm in (self.norm, self.after):
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(1, 2, generator=generator)

    def forward(self, x):
        return self.linear(self.after(self.norm(self.conv(x))).relu().mean((2, 3)))


@pytest.fixture(params=["eager", "auto"])
def backend(request):
    return request.param


@pytest.fixture
def normed(seed, backend):
    images = np.random.default_rng(seed).integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
    dataset = dataset_from_arrays(images, np.arange(40) % 3, [0.5] * 3, [0.2] * 3, "cpu")
    population = Population.from_modules([Normed(seed), Normed(seed + 1)])
    return evaluator_of(Normed(0), backend), population, dataset


def evaluator_of(network, backend: str, **settings) -> Evaluator:
    return Evaluator(network, replace(PLAIN, backend=backend), batch_size=16, **settings)


def assert_closed_form(found, place, cost: float) -> None:
    """float32 sums of squares; log(expm1) and softplus are well conditioned at costs above the floor."""
    loss, error = closed_form(cost)
    assert found.loss["test"]["averaged"][place] == pytest.approx(loss, rel=1e-4)
    assert found.error["test"]["averaged"][place] == pytest.approx(error, abs=100 / 21 + 1e-9)


# The line


def test_a_quadratic_bowl_is_quadratic_on_the_line_and_beyond(seed):
    a, b = np.random.default_rng(seed).uniform(-1, 1, (2, 5)).astype(np.float32)
    evaluator, population = population_of(Bowl, a, b)
    line = evaluate_line(evaluator, population, SPLITS, ALPHAS)
    for place, alpha in enumerate(ALPHAS):
        assert_closed_form(line, place, bowl_cost((1 - alpha) * a.astype(float) + alpha * b.astype(float)))
    # A second difference is exact for a parabola: E(0) - 2 E(1/2) + E(1) = mean(x) |b - a|^2 / 2.
    e = dict(zip(ALPHAS, line.loss["test"]["averaged"], strict=True))
    bend = (closed_form(1.0)[0] - closed_form(0.0)[0]) * bowl_cost(b.astype(float) - a) / 2
    assert e[0] - 2 * e[0.5] + e[1] == pytest.approx(bend, rel=1e-3, abs=1e-5)


def test_ends_order_and_chunks(normed, backend):
    """Ends are themselves to the bit, and the number of networks in memory has no effect."""
    evaluator, population, dataset = normed
    splits = {"test": dataset}
    how = {"treatments": BOTH, "recomputation": Recomputation(dataset, Noise(3))}
    line = evaluate_line(evaluator, population, splits, ALPHAS, **how)
    averaged, recomputed = (line.loss["test"][treatment] for treatment in BOTH)
    ends = np.isin(ALPHAS, [0, 1])
    assert averaged[ends].tolist() == evaluator.scores(population, dataset).loss_M.tolist()
    assert np.isfinite(recomputed).all()
    assert (np.abs(recomputed - averaged)[~np.isnan(averaged)] > 1e-4).all()
    row_bytes = 2 * (8 * population.layout.P + 4 * population.layout.Q + 8)
    for memory in (1, 3 * row_bytes):
        few = evaluator_of(Normed(0), backend, memory_bytes=memory)
        assert_same(evaluate_line(few, population, splits, ALPHAS, **how), line)
    back = evaluate_line(evaluator, population.clone_rows([1, 0]), splits, [1, 0.8, 0])
    np.testing.assert_allclose(back.loss["test"]["averaged"], averaged[[2, 3, 6]], rtol=1e-5)


def assert_same(found: Measured, expected: Measured) -> None:
    assert found.names == expected.names
    for one, other in ((found.loss, expected.loss), (found.error, expected.error)):
        for treatment in other["test"]:
            assert np.array_equal(one["test"][treatment], other["test"][treatment], equal_nan=True)


def test_a_negative_variance_is_not_clamped(normed):
    evaluator, population, dataset = normed
    for m, variance in ((0, 2.0), (1, 0.5)):
        population.buffers(m)["norm.running_var"][1] = variance  # of one channel of one of the norms
    alphas = [5.0, 0.0, 1.0, 1.34, 1.3]  # 2 - 1.5 alpha is negative from 4/3 on
    line = evaluate_line(
        evaluator, population, {"test": dataset}, alphas,
        treatments=("averaged", "recomputed"), recomputation=Recomputation(dataset),
    )  # fmt: skip
    sound = [1, 2, 4]
    without = evaluate_line(evaluator, population, {"test": dataset}, [alphas[i] for i in sound])
    for table, expected in ((line.loss, without.loss), (line.error, without.error)):
        assert np.isnan(table["test"]["averaged"]).tolist() == [True, False, False, True, False]
        np.testing.assert_allclose(table["test"]["averaged"][sound], expected["test"]["averaged"], rtol=1e-6)
        assert np.isfinite(table["test"]["recomputed"]).all()
    rows = {(row["batch_norm"], row["alpha"]): row for row in line.rows()}
    assert rows["averaged", 5.0]["test_loss_nats"] is None
    assert rows["recomputed", 1.3]["test_error_%"] == line.error["test"]["recomputed"][4]


# Barriers


def made(alphas, loss, error) -> Measured:
    tables = ({"test": {"averaged": np.array(values, dtype=float)}} for values in (loss, error))
    return Measured([{"alpha": alpha} for alpha in alphas], *tables)


def test_barriers_of_a_bowl():
    """It is convex: the loss is largest at an end, and nowhere above the line between them."""
    evaluator, population = population_of(Bowl, [0.2], [1.5])
    (found,) = barrier_between(evaluator, population, SPLITS)
    line = [closed_form(bowl_cost([0.2 + 1.3 * alpha])) for alpha in np.linspace(0, 1, 30)]
    loss, errors = np.array(line).T
    assert (found.alphas, found.alpha_of_loss) == (30, 1)
    assert found.loss == pytest.approx((loss[-1] - loss[0]) / 2, rel=1e-5)
    assert found.loss_linear == pytest.approx(0, abs=1e-6)
    assert found.error == pytest.approx(errors.max() - (errors[0] + errors[-1]) / 2)
    assert found.error_linear == pytest.approx((errors - np.linspace(errors[0], errors[-1], 30)).max())


def test_barriers_worked_by_hand():
    found = barrier_of(made([1, 0, 0.5, -1, 2], loss=[4, 2, 6, 50, 50], error=[20, 10, 16, 99, 99]), "test")
    assert (found.error, found.error_linear, found.alpha_of_error) == (20 - 15, 1, 1)
    assert (found.loss, found.loss_linear, found.alpha_of_loss) == (6 - 3, 3, 0.5)
    assert (found.error_at, found.loss_at) == (0, 3)  # at the alphas of the largest values
    assert found.alphas == 3
    counted = barrier_of(
        made([0, 0.5, 1], loss=[2, 6, 4], error=[10, 16, 20]), "test", counted_L=np.array([1, 0, 1], bool)
    )
    assert (counted.loss, counted.alphas) == (1, 2)
    # The linear variant can also be the larger one.
    steep = barrier_of(made([0, 0.1, 0.9, 1], loss=[0, 9, 11, 10], error=[10, 16, 20, 30]), "test")
    assert steep.row() == pytest.approx({
        "split": "test", "batch_norm": "averaged",
        "error_barrier_%": 10, "error_barrier_linear_%": 4, "error_barrier_at_%": 0,
        "loss_barrier_nats": 6, "loss_barrier_linear_nats": 8, "loss_barrier_at_nats": 2,
        "alpha_of_largest_error": 1, "alpha_of_largest_loss": 0.9, "alphas": 4,
    })  # fmt: skip
    # A hole in the line is not overlooked.
    places = np.linspace(0, 1, 11)
    flat = barrier_of(made(places, loss=np.full(11, 0.7), error=np.full(11, 3.0)), "test")
    assert (flat.error_linear, flat.loss_linear) == (0.0, 0.0)
    found = barrier_of(made([0, 0.5, 1], loss=[1, np.nan, 1], error=[1, 2, 3]), "test")
    assert np.isnan([found.loss, found.loss_linear]).all()
    assert found.error == 1


# The plane


def test_a_bowl_over_the_plane_has_its_closed_form(seed):
    """Its cost at (x, y) follows from those at O, A and B: it is a parabola of the distance."""
    w = np.random.default_rng(seed).uniform(-0.8, 0.8, (3, 5)).astype(np.float32).astype(float)
    evaluator, population = population_of(Bowl, *w)
    points_32 = plane_points(population)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        apart = np.linalg.norm(points_32[i] - points_32[j])
        assert apart == pytest.approx(np.linalg.norm(w[i] - w[j]), rel=1e-12)
    assert points_32[0].tolist() == [0, 0]
    assert points_32[1, 1] == 0 < points_32[2, 1]
    found = evaluate_plane(evaluator, population, SPLITS, points=(6, 5), margin=0.3)
    spanned = np.vstack([np.ones(3), points_32.T])
    for i, name in enumerate(found.names):
        weights = np.linalg.solve(spanned, [1, name["x_l2"], name["y_l2"]])
        assert_closed_form(found, i, bowl_cost(weights @ w))
    for axis, places in (("x_l2", points_32[:, 0]), ("y_l2", points_32[:, 1])):
        beyond = 0.3 * np.ptp(places)
        ends = [found.column(axis).min(), found.column(axis).max()]
        assert ends == pytest.approx([places.min() - beyond, places.max() + beyond])
    assert found.column("x_l2").reshape(5, 6)[0].tolist() == sorted(set(found.column("x_l2")))


def test_the_three_points_of_a_plane_are_themselves_to_the_bit():
    # A right angle and no margin: all three points are corners of the grid.
    evaluator, population = population_of(Bowl, [0.1, 0.2], [0.9, 0.2], [0.1, 1.3])
    settings = {"points": (2, 2), "margin": 0.0, "treatments": ("recomputed", "averaged")}
    found = evaluate_plane(evaluator, population, SPLITS, **settings, recomputation=Recomputation(SPLITS["test"]))
    expected = evaluator.scores(population, SPLITS["test"]).loss_M
    for treatment in ("averaged", "recomputed"):  # without batch norm they are the same
        assert found.loss["test"][treatment][:3].tolist() == expected.tolist()
    rows = found.rows()
    assert len(rows) == 8
    (row,) = (r for r in rows if r["x_l2"] > 0 and r["y_l2"] == 0 and r["batch_norm"] == "averaged")
    assert row["test_loss_nats"] == expected[1]


# Blocks


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))


class ThreeBlocks(Costs):
    """cost = (x + 2 y)^2 + z^2, from two children and a parameter of its own."""

    def __init__(self, xyz: tuple[float, float, float]) -> None:
        super().__init__()
        x, y, z = xyz
        self.z = nn.Parameter(torch.tensor(z))
        self.x, self.xy = Scalar(x), nn.ModuleDict({"y": Scalar(y)})

    def cost(self):
        return (self.x.w + 2 * self.xy["y"].w) ** 2 + self.z**2


A, B = (0.2, 0.3, 0.5), (-0.4, 0.6, 1.1)


def pair_of_three():
    return population_of(ThreeBlocks, A, B)


def test_blocks_have_their_closed_form_in_both_directions():
    evaluator, population = pair_of_three()
    alphas = [0.0, 0.3, 1.0, 1.5]
    found = evaluate_blocks(evaluator, population, SPLITS, alphas)
    loss_DGL = found.loss["test"]["averaged"].reshape(2, 3, 4)
    for i, name in enumerate(found.names):
        rest, other = (A, B) if name["rest"] == "A" else (B, A)
        w = list(rest)
        moved = ["x", "xy", "z"].index(name["block"])
        w[moved] = (1 - name["alpha"]) * rest[moved] + name["alpha"] * other[moved]
        assert_closed_form(found, i, (w[0] + 2 * w[1]) ** 2 + w[2] ** 2)
    assert [tuple(name.values()) for name in found.names] == [
        (rest, block, alpha) for rest in "AB" for block in ("z", "x", "xy") for alpha in alphas
    ]
    own = evaluator.scores(population, SPLITS["test"]).loss_M
    assert [set(loss_DGL[d, :, 0]) for d in range(2)] == [{own[0]}, {own[1]}]
    few = Evaluator(ThreeBlocks(A), PLAIN, memory_bytes=1)
    swapped = evaluate_blocks(few, population.clone_rows([1, 0]), SPLITS, alphas).loss["test"]["averaged"]
    assert np.array_equal(swapped.reshape(2, 3, 4), loss_DGL[::-1])
    groups = {"both": ["x.w", "xy"], "everything": ["x", "xy", "z"]}
    found = evaluate_blocks(evaluator, population, SPLITS, [0.5, 1.0], groups=groups)
    x, y = (A[0] + B[0]) / 2, (A[1] + B[1]) / 2
    assert_closed_form(found, 0, (x + 2 * y) ** 2 + A[2] ** 2)
    assert found.loss["test"]["averaged"][[3, 7]].tolist() == own[::-1].tolist()
    rows = found.rows()
    assert rows[0]["test_loss_nats"] == found.loss["test"]["averaged"][0]
    assert json.loads(json.dumps(rows)) == rows


def test_blocks_are_top_level_parts_and_elements_of_lists():
    blocks = [f"blocks.{i}" for i in range(9)]
    assert [*block_groups(build_model("resnet20", 10))] == ["conv", "bn", *blocks, "linear"]


def test_statistics_move_with_their_block_alone(normed):
    evaluator, population, dataset = normed
    found = evaluate_blocks(
        evaluator, population, {"test": dataset}, [0.4],
        treatments=("averaged", "recomputed"), recomputation=Recomputation(dataset),
    )  # fmt: skip
    a, b = (population.state_dict(m) for m in range(2))
    for g, block in enumerate(("conv", "norm", "after", "linear")):
        mixed = Normed(0)
        moved = {key: a[key] + 0.4 * (b[key] - a[key]) for key in a if key.startswith(f"{block}.") and a[key].ndim}
        mixed.load_state_dict(a | moved)
        one = Population.from_modules([mixed])
        for treatment, network in (
            ("averaged", one),
            ("recomputed", evaluator.recompute(one, Recomputation(dataset))),
        ):
            loss = evaluator.scores(network, dataset).loss_M[0]
            assert found.loss["test"][treatment][g] == pytest.approx(loss, rel=1e-5), (block, treatment)


def line_with(normed, **settings):
    evaluator, population, dataset = normed
    evaluate_line(
        **{"evaluator": evaluator, "pair": population, "splits": {"test": dataset}, "alphas": [0, 1], **settings}
    )


def blocks_with(**settings):
    evaluator, population = pair_of_three()
    evaluate_blocks(**{"evaluator": evaluator, "pair": population, "splits": SPLITS, "alphas": [0, 1], **settings})


def plane_of(*ws, **settings):
    evaluator, population = population_of(Bowl, *ws)
    evaluate_plane(evaluator, population, SPLITS, **settings)


F, P, Q = [0.1, 0.7], [0.3, 1.1], [0.9, 0.9]


@pytest.mark.parametrize("backend", ["eager"])
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: line_with(n, alphas=[]), "alphas"),
        (lambda n: line_with(n, alphas=0.5), "alphas"),
        (lambda n: line_with(n, alphas=[0, float("nan")]), "finite"),
        (lambda n: line_with(n, pair=n[1].clone_rows([0, 1, 1])), "give 2"),
        (lambda n: line_with(n, treatments=()), "treatments"),
        (lambda n: line_with(n, treatments="averaged"), "treatments"),
        (lambda n: line_with(n, treatments=("averaged", "averaged")), "treatments"),
        (lambda n: line_with(n, treatments=("clamped",)), "clamped"),
        (lambda n: line_with(n, treatments=("recomputed",)), "Recomputation"),
        (lambda n: line_with(n, splits={}), "no split"),
        (lambda n: barrier_of(made([0, 0.5], [1, 2], [1, 2]), "test"), "both end points"),
        (lambda n: barrier_of(made([0, 1], [1, 2], [1, 2]), "train"), "test averaged"),
        (lambda n: barrier_between(*n[:2], {"test": n[2]}, alphas=1), "two end points"),
        (lambda n: plane_of(F, F, P), "member 0 and member 1 are equal"),
        (lambda n: plane_of(F, P, F), "member 0 and member 2 are equal"),
        (lambda n: plane_of(F, P, P), "member 1 and member 2 are equal"),
        (lambda n: plane_of(F, P, [0.2, 0.9]), "on one line"),
        (lambda n: plane_of(F, [0.3, float("inf")], Q), "not finite"),
        (lambda n: plane_of(F, P, Q, points=(1, 5)), "at least 2"),
        (lambda n: plane_of(F, P, Q, margin=-0.1), "margin"),
        (lambda n: plane_of(F, P), "give 3"),
        (lambda n: blocks_with(groups={}), "no block"),
        (lambda n: blocks_with(groups={"first": ["y"]}), "'y'"),
        (lambda n: blocks_with(groups={"first": ["x", "y"]}), "'y'"),
        (lambda n: blocks_with(groups={"first": "x"}), "list of parameter prefixes"),
        (lambda n: blocks_with(groups={"first": []}), "list of parameter prefixes"),
        (lambda n: blocks_with(pair=pair_of_three()[1][:1]), "give 2"),
    ],
)
def test_bad_input_is_refused(normed, call, words):
    with pytest.raises(UserError, match=words):
        call(normed)
