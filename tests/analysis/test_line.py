"""The line against closed forms, against itself in other chunks, and its treatments of batch norm."""

import json

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, Bowl, bowl_cost, closed_form, constant_images, population_of
from torch import nn

from fastwi.analysis import Evaluator, Recomputation, dataset_from_arrays, evaluate_line
from fastwi.data.noise import Noise
from fastwi.errors import UserError
from fastwi.population import Population

ALPHAS = [-0.75, -0.1, 0.0, 0.2, 0.5, 0.9, 1.0, 1.6]
ALL = ("own", "averaged", "recomputed")


class Normed(nn.Module):
    """One convolution and batch norm."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.norm.running_mean.normal_(generator=generator)
            self.norm.running_var.uniform_(1, 2, generator=generator)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def normed(seed):
    images = np.random.default_rng(seed).integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
    labels = np.arange(40) % 3
    dataset = dataset_from_arrays(images, labels, [0.5] * 3, [0.2] * 3, "cpu")
    population = Population.from_modules([Normed(seed), Normed(seed + 1)])
    return Evaluator(Normed(0), PLAIN, batch_size=16), population, dataset


def test_a_quadratic_bowl_is_quadratic_on_the_line_and_beyond(seed):
    a, b = np.random.default_rng(seed).uniform(-1, 1, (2, 5)).astype(np.float32)
    evaluator, population = population_of(Bowl, a, b)
    line = evaluate_line(evaluator, population, {"test": constant_images()}, ALPHAS)
    for place, alpha in enumerate(ALPHAS):
        cost = bowl_cost((1 - alpha) * a.astype(np.float64) + alpha * b.astype(np.float64))
        loss, error = closed_form(cost)
        # Of 5 float32 squares and 21 sums; log(expm1) and softplus are well conditioned at costs above FLOOR.
        assert line.loss["test"]["averaged"][place] == pytest.approx(loss, rel=2e-5)
        assert line.error["test"]["averaged"][place] == pytest.approx(error, abs=100 / 21 + 1e-9)
    # A second difference is exact for a parabola: E(0) - 2 E(1/2) + E(1) = mean(x) |b - a|^2 / 2.
    e = dict(zip(ALPHAS, line.loss["test"]["averaged"], strict=True))
    bend = (closed_form(1.0)[0] - closed_form(0.0)[0]) * bowl_cost(b.astype(np.float64) - a) / 2
    assert e[0] - 2 * e[0.5] + e[1] == pytest.approx(bend, rel=1e-3, abs=1e-5)


def test_errors_have_their_closed_form_where_no_image_is_near_the_boundary():
    evaluator, population = population_of(Bowl, [0.5], [1.7])
    line = evaluate_line(evaluator, population, {"test": constant_images()}, [0, 0.25, 0.5, 0.75, 1])
    expected = [closed_form(bowl_cost([0.5 + 1.2 * alpha]))[1] for alpha in (0, 0.25, 0.5, 0.75, 1)]
    assert line.error["test"]["averaged"].tolist() == pytest.approx(expected)
    assert len(set(expected)) == 4


def test_order_of_the_ends_and_of_the_members(normed):
    evaluator, population, dataset = normed
    there = evaluate_line(evaluator, population, {"test": dataset}, [0, 0.25, 1])
    back = evaluate_line(evaluator, population, {"test": dataset}, [1, 0.75, 0], ends=(1, 0))
    np.testing.assert_allclose(there.loss["test"]["averaged"], back.loss["test"]["averaged"], rtol=1e-5)
    ends = evaluator.scores(population, dataset)
    assert there.loss["test"]["averaged"][[0, 2]].tolist() == ends.loss_M.tolist()
    assert there.loss["test"]["averaged"][0] != there.loss["test"]["averaged"][2]


def test_chunks_have_no_effect_to_the_bit(normed):
    evaluator, population, dataset = normed
    settings = {"treatments": ALL, "recomputation": Recomputation(dataset, Noise(3))}
    whole = evaluate_line(evaluator, population, {"test": dataset}, ALPHAS, **settings)
    row_bytes = 2 * (8 * population.layout.P + 4 * population.layout.Q + 8)
    for memory in (1, 3 * row_bytes):
        chunked = evaluate_line(evaluator, population, {"test": dataset}, ALPHAS, **settings, memory_bytes=memory)
        for treatment in ALL:
            for table in ("loss", "error"):
                found, expected = (getattr(x, table)["test"][treatment] for x in (chunked, whole))
                assert np.array_equal(found, expected, equal_nan=True), (memory, treatment, table)
    assert np.array_equal(
        evaluate_line(evaluator, population, {"test": dataset}, [0.2]).loss["test"]["averaged"],
        whole.loss["test"]["averaged"][3:4],
    )


def test_treatments_differ_and_own_is_at_the_ends_only(normed):
    evaluator, population, dataset = normed
    recomputation = Recomputation(dataset, Noise(3))
    line = evaluate_line(
        evaluator, population, {"test": dataset}, ALPHAS, treatments=ALL, recomputation=recomputation
    )
    own, averaged, recomputed = (line.loss["test"][treatment] for treatment in ALL)
    ends = np.isin(ALPHAS, [0, 1])
    assert own[ends].tolist() == averaged[ends].tolist() == evaluator.scores(population, dataset).loss_M.tolist()
    assert np.isnan(own[~ends]).all()
    assert np.isfinite(recomputed).all()
    inside = ~np.isnan(averaged)
    assert (np.abs(recomputed - averaged)[inside] > 1e-4).all()
    alone = evaluate_line(evaluator, population, {"test": dataset}, ALPHAS, treatments=("own",))
    assert alone.loss["test"]["own"][ends].tolist() == own[ends].tolist()
    assert list(alone.loss["test"]) == ["own"]


def test_a_negative_variance_is_not_clamped(normed):
    evaluator, population, dataset = normed
    for m, variance in ((0, 2.0), (1, 0.5)):
        population.buffers(m)["norm.running_var"].fill_(variance)
    alphas = [0.0, 1.0, 1.3, 1.34, 5.0]  # 2 - 1.5 alpha is negative from 4/3 on
    line = evaluate_line(
        evaluator, population, {"test": dataset}, alphas,
        treatments=("averaged", "recomputed"), recomputation=Recomputation(dataset),
    )  # fmt: skip
    for table in (line.loss, line.error):
        assert np.isnan(table["test"]["averaged"]).tolist() == [False, False, False, True, True]
        assert np.isfinite(table["test"]["recomputed"]).all()
    told = {(row["batch_norm"], row["alpha"]): row for row in line.rows()}
    assert told["averaged", 5.0]["test_loss_nats"] is None
    assert json.loads(json.dumps(line.rows(), allow_nan=False)) == line.rows()


def test_rows_carry_units_and_every_split(normed):
    evaluator, population, dataset = normed
    line = evaluate_line(
        evaluator, population, {"train": dataset, "test": dataset}, [0, 0.5, 1], treatments=("own", "averaged")
    )
    rows = line.rows()
    assert [(row["batch_norm"], row["alpha"]) for row in rows] == [
        ("own", 0), ("own", 1), ("averaged", 0), ("averaged", 0.5), ("averaged", 1)
    ]  # fmt: skip
    assert set(rows[0]) == {
        "alpha", "batch_norm", "train_loss_nats", "train_error_%", "test_loss_nats", "test_error_%"
    }  # fmt: skip
    assert rows[3]["test_loss_nats"] == line.loss["test"]["averaged"][1]
    assert rows[3]["train_error_%"] == line.error["train"]["averaged"][1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alphas": []}, "alphas"),
        ({"alphas": 0.5}, "alphas"),
        ({"alphas": [0, float("nan")]}, "finite"),
        ({"ends": (0, 2)}, "member 2"),
        ({"ends": (-1, 0)}, "member -1"),
        ({"treatments": ()}, "one or more"),
        ({"treatments": "own"}, "one or more"),
        ({"treatments": ("averaged", "averaged")}, "once"),
        ({"treatments": ("clamped",)}, "clamped"),
        ({"treatments": ("recomputed",)}, "Recomputation"),
        ({"treatments": ("own",), "alphas": [0.5]}, "0 or 1"),
        ({"splits": {}}, "no split"),
    ],
)
def test_bad_input_gets_one_line(normed, settings, words):
    evaluator, population, dataset = normed
    arguments = {"splits": {"test": dataset}, "alphas": [0, 1], **settings}
    with pytest.raises(UserError, match=words) as caught:
        evaluate_line(evaluator, population, **arguments)
    assert "\n" not in str(caught.value)
