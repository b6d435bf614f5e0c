"""The plane against closed forms in float64."""

import json

import numpy as np
import pytest
from analytic_networks import Bowl, bowl_cost, closed_form, constant_images, population_of

from fastwi.analysis import Recomputation, evaluate_plane, plane_through
from fastwi.errors import UserError


def test_the_frame_is_orthonormal_and_holds_the_three_points(seed):
    w = np.random.default_rng(seed).normal(size=(4, 7)).astype(np.float32).astype(np.float64)
    _, population = population_of(Bowl, *w)
    plane = plane_through(population, (3, 0, 2))
    assert [plane.u_P @ plane.u_P, plane.v_P @ plane.v_P, plane.u_P @ plane.v_P] == pytest.approx(
        [1, 1, 0], abs=1e-14
    )  # fmt: skip
    for point, m in zip(plane.points_32, (3, 0, 2), strict=True):
        there = w[3] + point[0] * plane.u_P[:7] + point[1] * plane.v_P[:7]
        np.testing.assert_allclose(there, w[m], rtol=0, atol=1e-13)
    assert plane.points_32[1, 0] == pytest.approx(np.linalg.norm(w[0] - w[3]))
    assert plane.points_32[2, 1] > 0


def test_a_bowl_over_the_plane_has_its_closed_form(seed):
    w = np.random.default_rng(seed).uniform(-0.8, 0.8, (3, 5)).astype(np.float32).astype(np.float64)
    evaluator, population = population_of(Bowl, *w)
    found = evaluate_plane(evaluator, population, {"test": constant_images()}, points=(6, 5), margin=0.3)
    plane = plane_through(population)
    loss_YX, error_YX = found.loss["test"]["averaged"], found.error["test"]["averaged"]
    assert loss_YX.shape == error_YX.shape == (5, 6)
    for j, y in enumerate(found.y_Y):
        for i, x in enumerate(found.x_X):
            loss, error = closed_form(bowl_cost(w[0] + x * plane.u_P[:5] + y * plane.v_P[:5]))
            assert loss_YX[j, i] == pytest.approx(loss, rel=1e-4)
            assert error_YX[j, i] == pytest.approx(error, abs=100 / 21 + 1e-9)
    for axis, place in ((found.x_X, 0), (found.y_Y, 1)):
        low, high = found.points_32[:, place].min(), found.points_32[:, place].max()
        assert axis[0] == pytest.approx(low - 0.3 * (high - low))
        assert axis[-1] == pytest.approx(high + 0.3 * (high - low))


def test_the_three_points_are_themselves_to_the_bit():
    # A right angle and no margin: all three points are corners of the grid.
    evaluator, population = population_of(Bowl, [0.1, 0.2], [0.9, 0.2], [0.1, 1.3])
    dataset = constant_images()
    settings = {"points": (2, 2), "margin": 0.0, "treatments": ("recomputed", "averaged")}
    found = evaluate_plane(evaluator, population, {"test": dataset}, **settings, recomputation=Recomputation(dataset))
    expected = evaluator.scores(population, dataset).loss_M
    for treatment in ("averaged", "recomputed"):  # without batch norm they are the same
        loss_YX = found.loss["test"][treatment]
        assert [loss_YX[0, 0], loss_YX[0, 1], loss_YX[1, 0]] == expected.tolist()
    rows = found.rows()
    assert len(rows) == 8
    place = next(row for row in rows if row["x_l2"] > 0 and row["y_l2"] == 0 and row["batch_norm"] == "averaged")
    assert place["test_loss_nats"] == expected[1]
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("ws", "settings", "words"),
    [
        (([1.0, 2.0], [1.0, 2.0], [3.0, 1.0]), {}, "member 0 and member 1 are equal"),
        (([1.0, 2.0], [3.0, 1.0], [1.0, 2.0]), {}, "member 0 and member 2 are equal"),
        (([1.0, 2.0], [3.0, 1.0], [3.0, 1.0]), {}, "member 1 and member 2 are equal"),
        (([0.1, 0.7], [0.3, 1.1], [0.2, 0.9]), {}, "on one line"),
        (([0.1, 0.7], [0.3, float("inf")], [0.2, 0.9]), {}, "not finite"),
        (([0.1, 0.7], [0.3, 1.1], [0.9, 0.9]), {"points": (1, 5)}, "at least 2"),
        (([0.1, 0.7], [0.3, 1.1], [0.9, 0.9]), {"margin": -0.1}, "margin"),
        (([0.1, 0.7], [0.3, 1.1], [0.9, 0.9]), {"members": (0, 1, 3)}, "member 3"),
        (([0.1, 0.7], [0.3, 1.1], [0.9, 0.9]), {"treatments": ("own",)}, "own"),
    ],
)
def test_what_spans_no_plane_is_refused_in_one_line(ws, settings, words):
    evaluator, population = population_of(Bowl, *ws)
    with pytest.raises(UserError, match=words) as caught:
        evaluate_plane(evaluator, population, {"test": constant_images()}, **settings)
    assert "\n" not in str(caught.value)
