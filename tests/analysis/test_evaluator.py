"""The evaluator on anyone's modules and arrays: it changes neither, and says what it cannot take."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, Bowl, Costs, constant_images, population_of
from torch import nn
from torch.nn import functional

import fastwi
from fastwi.analysis import (
    Evaluator,
    Recomputation,
    Symmetry,
    barrier_of,
    calibration_scores,
    dataset_from_arrays,
    evaluate_line,
    forgetting_scores,
    match_weights,
)
from fastwi.config.schema import AugmentConfig
from fastwi.data.noise import Noise
from fastwi.errors import UserError

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


class Mlp(nn.Module):
    """A user's own network without batch norm, for images of 4 x 5 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(60, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1))))


class Dropping(nn.Module):
    """Dropout before batch norm, as a layer or as a function whose mode tracing would freeze."""

    def __init__(self, as_layer: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.5) if as_layer else None

    def forward(self, x):
        x = self.conv(x)
        x = self.drop(x) if self.drop else functional.dropout(x, 0.5, self.training)
        return self.linear(self.norm(x).relu().mean((2, 3)))


def logits_of(evaluator, population, m, dataset):
    """Float64 [N, K]."""
    return torch.cat([logits_NK for _, logits_NK in evaluator.logits(population, m, dataset)]).double()


def seeded(kind, seed, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*arguments)


@pytest.fixture
def arrays(seed):
    images = np.random.default_rng(seed).integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)
    return images, np.arange(30) % 3


def test_scores_and_logits_of_a_users_own_networks(seed, arrays):
    images, labels = arrays
    networks = [seeded(Mlp, seed + m) for m in range(3)]
    seen: list[int] = []
    evaluator = Evaluator(networks[0], PLAIN, report=seen.append)
    population = fastwi.Population.from_modules(networks)
    dataset = dataset_from_arrays(images, labels, MEAN, STD, "cpu")
    scores = evaluator.scores(population, dataset)
    x = torch.from_numpy(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).copy())
    for m, network in enumerate(networks):
        logits = network.double()(x).detach()
        assert scores.loss_M[m] == pytest.approx(
            float(functional.cross_entropy(logits, torch.tensor(labels))), rel=1e-5
        )
        assert scores.accuracy_M[m] == pytest.approx(100 * float((logits.argmax(1).numpy() == labels).mean()))
        torch.testing.assert_close(logits_of(evaluator, population, m, dataset), logits, rtol=1e-5, atol=1e-5)
    line = evaluate_line(evaluator, population.clone_rows([2, 1]), {"own data": dataset}, [0, 1])
    assert line.loss["own data"]["averaged"].tolist() == [scores.loss_M[2], scores.loss_M[1]]
    again = evaluator.recompute(population, Recomputation(dataset))  # without batch norm a plain copy
    assert torch.equal(again.weights_MP, population.weights_MP)
    assert again.weights_MP.data_ptr() != population.weights_MP.data_ptr()
    assert sum(seen) == (3 + 2) * len(dataset)  # images evaluated


def test_the_given_model_stays_as_it_was(seed, arrays):
    dataset = dataset_from_arrays(*arrays, MEAN, STD, "cpu")
    model = seeded(Dropping, seed, True).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    population = fastwi.Population.from_modules([model])
    evaluator = Evaluator(model, PLAIN, batch_size=10)
    evaluator.scores(evaluator.recompute(population, Recomputation(dataset)), dataset)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(population.buffers(0)["norm.running_mean"], before["norm.running_mean"])


@pytest.mark.parametrize("as_layer", [True, False])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_evaluation_never_drops(seed, arrays, as_layer, backend):
    dataset = dataset_from_arrays(*arrays, MEAN, STD, "cpu")
    model = seeded(Dropping, seed, as_layer).train()
    evaluator = Evaluator(model, replace(PLAIN, backend=backend))
    found = logits_of(evaluator, fastwi.Population.from_modules([model]), 0, dataset)
    x = dataset.table_C256[torch.arange(3), dataset.images_NHWC.long()].permute(0, 3, 1, 2)
    torch.testing.assert_close(found.float(), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)


def test_torchs_default_device_decides_nothing(seed, arrays):
    dataset = dataset_from_arrays(*arrays, MEAN, STD, "cpu")
    networks = [seeded(Mlp, seed + m) for m in range(2)]
    population, images_NCHW = fastwi.Population.from_modules(networks), torch.rand(2, 3, 4, 5)

    def measured() -> tuple[object, ...]:
        evaluator = Evaluator(networks[0], PLAIN)
        forgotten = forgetting_scores(evaluator, [population] * 2, dataset)
        orders = match_weights(Symmetry.of(networks[0], images_NCHW), population, [(0, 1)])
        calibrated = calibration_scores(evaluator, population, dataset, ensemble=True)
        return calibrated, forgotten.tolist(), orders[0].tolist()

    before = measured()
    with torch.device("meta"):
        assert measured() == before


def test_every_member_is_recomputed_on_the_same_draws(seed, arrays):
    dataset = dataset_from_arrays(*arrays, MEAN, STD, "cpu")
    model = seeded(Dropping, seed, True)
    population = fastwi.Population.from_modules([model]).clone_rows([0, 0])
    evaluator = Evaluator(model, PLAIN, batch_size=10, augment=AugmentConfig(padding=1))
    generator_before = torch.get_rng_state()
    draws = Recomputation(dataset, Noise(seed), 20)
    first = evaluator.recompute(population, draws)
    assert torch.equal(torch.get_rng_state(), generator_before)
    assert torch.equal(first.statistics_MQ[0], first.statistics_MQ[1])
    assert first.counters_MB.tolist() == [[2], [2]]
    torch.rand(1)  # what others draw has no part in it
    assert torch.equal(evaluator.recompute(population, draws).statistics_MQ, first.statistics_MQ)
    for others in ({"noise": Noise(seed + 1)}, {"epoch": 1}):
        other = evaluator.recompute(population, replace(draws, **others))
        assert not torch.equal(first.statistics_MQ[0], other.statistics_MQ[0])


class Rooted(Costs):
    """Its cost is not defined where its two weights have different signs."""

    def __init__(self, w_D) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w_D))

    def cost(self):
        return self.w.prod().sqrt()


def test_a_network_whose_outputs_are_nan_has_no_error():
    """Between two sound ones; NaN would be the prediction of the first class, which is right here."""
    evaluator, pair = population_of(Rooted, [1.0, 3.0], [-3.0, -1.0])
    line = evaluate_line(evaluator, pair, {"all": constant_images()}, [0, 0.5, 1])
    for table in (line.loss, line.error):
        assert np.isfinite(table["all"]["averaged"]).tolist() == [True, False, True]
    assert np.isnan(barrier_of(line, "all").error)


def test_arrays_become_a_dataset(arrays):
    images, labels = arrays
    dataset = dataset_from_arrays(torch.from_numpy(images), labels.tolist(), MEAN, STD, "cpu")
    assert np.array_equal(dataset.images_NHWC.numpy(), images)
    assert dataset.labels_N.dtype == torch.int64
    assert dataset.classes == 3
    for dtype in (np.uint8, np.uint16, np.uint64):
        again = dataset_from_arrays(images, labels.astype(dtype), MEAN, STD, "cpu")
        assert torch.equal(again.labels_N, dataset.labels_N)
    assert dataset.table_C256[1, 128].item() == pytest.approx((128 / 255 - 0.5) / 0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images_NHWC": np.zeros((30, 4, 5, 3), np.float32)}, "uint8"),
        ({"images_NHWC": np.zeros((30, 4, 5), np.uint8)}, "N, H, W, C"),
        ({"labels_N": np.zeros(29, np.int64)}, "30 integers"),
        ({"labels_N": np.zeros(30)}, "integers"),
        ({"labels_N": np.zeros(30, bool)}, "integers"),
        ({"labels_N": np.full(30, -1)}, "0 or more"),
        ({"mean": [0.0]}, "3 finite"),
        ({"std": [1.0, 1.0, float("nan")]}, "3 finite"),
        ({"std": [1.0, 0.0, 1.0]}, "above 0"),
        ({"std": [1.0, -1.0, 1.0]}, "above 0"),
    ],
)
def test_arrays_that_are_no_dataset(arrays, change, words):
    images, labels = arrays
    given = {"images_NHWC": images, "labels_N": labels, "mean": MEAN, "std": STD, **change}
    with pytest.raises(UserError, match=words):
        dataset_from_arrays(**given)


def test_bad_input_is_refused(seed, arrays):
    images, labels = arrays
    dataset = dataset_from_arrays(images, labels, MEAN, STD, "cpu")
    mlp = fastwi.Population.from_modules([seeded(Mlp, seed)])
    evaluator, bowl = population_of(Bowl, [0.5])
    too_many = dataset_from_arrays(images, labels + 1, MEAN, STD, "cpu")
    empty = type(dataset)(dataset.images_NHWC[:0], dataset.labels_N[:0], dataset.table_C256, 3)
    cases = [
        (lambda: evaluator.scores(mlp, constant_images()), "another architecture"),
        (lambda: Evaluator(Mlp(), PLAIN).scores(mlp, too_many), "labels run to 3"),
        (lambda: evaluator.scores(bowl, empty), "no images"),
        (lambda: evaluator.recompute(bowl, Recomputation(empty)), "no images"),
        (lambda: evaluator.recompute(bowl, Recomputation(constant_images(), images=-1)), "images is -1"),
        (lambda: Evaluator(Mlp(), PLAIN, batch_size=0), "batch_size"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words):
            call()
