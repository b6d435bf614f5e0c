"""Barriers against closed forms, and of trained ResNet20s against a reference from the definitions."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_networks import (
    PLAIN,
    Bowl,
    TwoBasins,
    basins_cost,
    bowl_cost,
    closed_form,
    constant_images,
    population_of,
)
from torch.nn import functional

from fastwi.analysis import Evaluator, LineResult, Recomputation, barrier_between, barrier_of, evaluate_line
from fastwi.config.schema import AugmentConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import load_split
from fastwi.engine.base import Settings
from fastwi.engine.loop import LoopEngine
from fastwi.errors import UserError
from fastwi.kernels.augment import augment_reference
from fastwi.models.registry import build_model
from fastwi.population import Population

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(padding=2, flip=0.5)
BATCH = 50


def made(alphas, loss, error) -> LineResult:
    tables = ({"test": {"averaged": np.array(values, dtype=float)}} for values in (loss, error))
    return LineResult(*tables, np.array(alphas, dtype=float))


def test_two_basins_have_their_closed_form(seed):
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random(6) < 0.5, -1.0, 1.0)
    evaluator, population = population_of(TwoBasins, signs, -signs)
    (found,) = barrier_between(evaluator, population, {"test": constant_images()})
    # No grid of 30 alphas has 1/2: the largest is next to it, at 14/29 or 15/29.
    top, bottom = closed_form(basins_cost([1 / 29])), closed_form(0.0)
    assert found.alphas == 30
    assert found.alpha_of_loss == pytest.approx(14 / 29) or found.alpha_of_loss == pytest.approx(15 / 29)
    for value in (found.loss, found.loss_linear):
        assert value == pytest.approx(top[0] - bottom[0], rel=1e-5)
    assert found.error == found.error_linear == pytest.approx(top[1] - bottom[1])
    assert found.error > 10


def test_uneven_ends_tell_the_two_variants_apart():
    evaluator, population = population_of(Bowl, [0.2], [1.5])
    (found,) = barrier_between(evaluator, population, {"test": constant_images()}, alphas=30)
    (first, error_first), (last, error_last) = closed_form(bowl_cost([0.2])), closed_form(bowl_cost([1.5]))
    # A bowl is convex: the loss is largest at an end, and nowhere above the line between them.
    assert found.loss == pytest.approx((last - first) / 2, rel=1e-5)
    assert found.loss_linear == pytest.approx(0, abs=1e-6)
    assert found.alpha_of_loss == 1
    errors = [closed_form(bowl_cost([0.2 + 1.3 * alpha]))[1] for alpha in np.linspace(0, 1, 30)]
    straight = np.linspace(error_first, error_last, 30)
    assert found.error == pytest.approx(max(errors) - (error_first + error_last) / 2)
    assert found.error_linear == pytest.approx(max(np.array(errors) - straight))
    assert found.error > found.error_linear


def test_definitions_on_numbers_worked_by_hand():
    line = made([1, 0, 0.5, -1, 2], loss=[4, 2, 6, 50, 50], error=[20, 10, 16, 99, 99])
    found = barrier_of(line, "test")
    assert (found.error, found.error_linear, found.alpha_of_error) == (20 - 15, 1, 1)
    assert (found.loss, found.loss_linear, found.alpha_of_loss) == (6 - 3, 3, 0.5)
    assert found.alphas == 3
    # The linear variant can also be the larger one.
    steep = barrier_of(made([0, 0.1, 1], loss=[0, 9, 10], error=[0, 9, 10]), "test")
    assert (steep.loss, steep.loss_linear) == (5, pytest.approx(8))
    row = found.row()
    assert row["error_barrier_%"] == 5
    assert row["loss_barrier_linear_nats"] == 3


def test_a_hole_in_the_line_is_not_overlooked():
    found = barrier_of(made([0, 0.5, 1], loss=[1, np.nan, 1], error=[1, 2, 3]), "test")
    assert np.isnan([found.loss, found.loss_linear]).all()
    assert found.error == 1


def test_bad_input_gets_one_line():
    evaluator, population = population_of(Bowl, [0.2], [1.5])
    line = evaluate_line(evaluator, population, {"test": constant_images()}, [0, 1], treatments=("own",))
    cases = [
        (lambda: barrier_of(made([0, 0.5], [1, 2], [1, 2]), "test"), "both end points"),
        (lambda: barrier_of(made([0, 1], [1, 2], [1, 2]), "train"), "test averaged"),
        (lambda: barrier_of(line, "test", "own"), "averaged or recomputed"),
        (lambda: barrier_between(evaluator, population, {"test": constant_images()}, alphas=1), "two end points"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def siblings(digits_directory):
    """Two children of a ResNet20 that learnt the digits for a moment, and the splits that they were trained on."""
    train, test = (load_split(digits_directory, split, CPU, n)[0] for split, n in (("train", 100), ("test", 60)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_model("resnet20", 10)
    optimizer = OptimizerConfig(batch_size=BATCH, learning_rate=0.1)
    engine = LoopEngine(network, Settings(PLAIN, optimizer, ScheduleConfig(), AUGMENT))
    parent = Population.from_modules([network])
    engine.train_epoch(parent, train, [Noise(0)], 0)
    children = parent.clone_rows([0, 0])
    for epoch in (1, 2):
        engine.train_epoch(children, train, [Noise(1), Noise(2)], epoch)
    alphas = np.array([0, 0.3, 0.6, 1, 1.25])
    expected = {
        treatment: reference(network, children, train, test, alphas, treatment == "recomputed")
        for treatment in ("averaged", "recomputed")
    }
    return network, children, train, test, alphas, expected


def reference(network, children, train, test, alphas, recompute):
    """Loss and error at `alphas`: state dicts interpolated in float64 and a plain evaluation loop."""
    losses, errors = [], []
    a, b = (children.state_dict(m) for m in (0, 1))
    model = copy.deepcopy(network).double()
    for alpha in alphas:
        mixed = {
            k: (1 - alpha) * a[k].double() + alpha * b[k].double() if a[k].is_floating_point() else a[k] for k in a
        }
        model.load_state_dict(mixed)
        if recompute:
            draws = Noise(9, statistics=True).draws(0, len(train), AUGMENT.padding, AUGMENT.flip)
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
            model.train()
            for first in range(0, len(train), BATCH):
                at = slice(first, first + BATCH)
                chosen = (torch.from_numpy(x[at]) for x in (draws.order_N, draws.offset_N2, draws.flip_N))
                with torch.no_grad():
                    model(augment_reference(train.images_NHWC, *chosen, train.table_C256.double(), AUGMENT.padding))
        model.eval()
        x_NCHW = test.table_C256.double()[torch.arange(3), test.images_NHWC.long()].permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = model(x_NCHW)
        losses.append(functional.cross_entropy(logits, test.labels_N).item())
        errors.append(100 * (logits.argmax(1) != test.labels_N).double().mean().item())
    return np.array(losses), np.array(errors)


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_trained_networks_agree_with_the_definitions_in_float64(siblings, backend):
    network, children, train, test, alphas, expected_of = siblings
    evaluator = Evaluator(network, replace(PLAIN, backend=backend), BATCH, AUGMENT)
    line = evaluate_line(
        evaluator, children, {"test": test}, alphas,
        treatments=("averaged", "recomputed"), recomputation=Recomputation(train, Noise(9)),
    )  # fmt: skip
    images = len(test)
    found_losses = []
    for treatment in ("averaged", "recomputed"):
        loss, error = expected_of[treatment]
        # 20 layers in float32 against float64; a rounded tie may cost one image.
        found_losses.append(loss)
        np.testing.assert_allclose(line.loss["test"][treatment], loss, rtol=1e-4)
        np.testing.assert_allclose(line.error["test"][treatment], error, atol=100 / images + 1e-9)
        inside = slice(0, 4)
        result = barrier_of(line, "test", treatment)
        expected = loss[inside].max() - (loss[0] + loss[3]) / 2
        assert result.loss == pytest.approx(expected, rel=1e-3, abs=1e-4)
        straight = np.interp(alphas[inside], [0, 1], [loss[0], loss[3]])
        assert result.loss_linear == pytest.approx((loss[inside] - straight).max(), rel=1e-3, abs=1e-4)
        expected = error[inside].max() - (error[0] + error[3]) / 2
        assert result.error == pytest.approx(expected, abs=200 / images + 1e-9)
    assert np.abs(found_losses[0] - found_losses[1]).min() > 1e-3
