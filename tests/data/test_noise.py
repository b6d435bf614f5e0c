"""SGD noise: pure functions of (seed, stream, epoch), with the distributions that they promise."""

import itertools

import numpy as np
import pytest

from fastwi.data import noise
from fastwi.data.noise import Noise, Stream, permutation, raw_words


def test_golden_words():
    """Recorded: a change of these numbers changes every result that was ever published with them."""
    assert [stream.name for stream in sorted(Stream)] == [
        "ORDER", "CROP", "FLIP", "INIT", "STATISTICS_ORDER", "STATISTICS_CROP", "STATISTICS_FLIP", "SUBSET", "LAYERS",
        "STATISTICS_LAYERS", "PROBES",
    ]  # fmt: skip
    assert sorted(Stream) == list(range(len(Stream)))
    assert raw_words(1, Stream.ORDER, 2, 3).tolist() == [
        5705853004827290377, 6584680345644299050, 680768428710196683,
    ]  # fmt: skip
    assert raw_words(2**63, Stream.INIT, 0, 1).tolist() == [13431313335767188874]
    assert permutation(0, Stream.SUBSET, 0, 6).tolist() == [3, 5, 1, 2, 4, 0]
    assert raw_words(2**64 - 1, Stream.FLIP, 2**48 - 1, 1).tolist() == [5132614374097584727]
    assert [Noise(7, statistics).layers_seed(3) for statistics in (False, True)] == [
        3187642273386378214,
        2618101374336123,
    ]
    # A part of an epoch has a seed of its own, by the step at which it begins.
    assert [Noise(7).layers_seed(3, step) for step in (1, 2)] == [1798545523388102838, 3932632774114328256]


def test_golden_draws():
    draws = Noise(7).draws(3, 6, 4, 0.5)
    assert [each.dtype for each in (draws.order_N, draws.offset_N2, draws.flip_N)] == [np.int64, np.int64, np.bool_]
    assert draws.order_N.tolist() == [2, 5, 3, 0, 4, 1]
    assert draws.offset_N2.tolist() == [[4, 1], [7, 1], [1, 2], [3, 2], [7, 1], [0, 6]]
    assert draws.flip_N.tolist() == [True, False, False, True, True, True]
    draws = Noise(7, statistics=True).draws(3, 6, 4, 0.5)
    assert draws.order_N.tolist() == [0, 1, 4, 3, 2, 5]
    assert draws.offset_N2.tolist() == [[6, 0], [6, 0], [7, 7], [3, 3], [3, 0], [1, 8]]
    assert draws.flip_N.tolist() == [False, True, False, True, True, True]


def test_draws_are_a_pure_function_of_seed_epoch_and_purpose(seed):
    """`seed + epoch` is the classic mistake: seed 1 at epoch 0 must not be seed 0 at epoch 1."""
    cases = list(itertools.product((seed, seed + 1), (0, 1, 2), (False, True)))

    def words(noise_seed: int, epoch: int, statistics: bool) -> list[bytes]:
        draws = Noise(noise_seed, statistics).draws(epoch, 500, 4, 0.5)
        return [each.tobytes() for each in (draws.order_N, draws.offset_N2, draws.flip_N)]

    made = [words(*case) for case in cases]
    assert made == [words(*case) for case in cases]
    assert all(len(set(kind)) == len(cases) for kind in zip(*made, strict=True))


def test_streams_share_no_words(seed):
    words = [raw_words(seed, stream, epoch, 1000) for stream in Stream for epoch in (0, 1, 2**48 - 1)]
    words += [raw_words(seed + 1, Stream.ORDER, 0, 1000)]
    assert len(np.unique(np.concatenate(words))) == 1000 * len(words)


@pytest.mark.parametrize(("noise_seed", "epoch"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**48)])
def test_out_of_range(noise_seed, epoch):
    with pytest.raises(ValueError, match="must be in"):
        Noise(noise_seed).draws(epoch, 4, 4, 0.5)


def test_equal_words_keep_their_order(seed, monkeypatch):
    """However rare they are: what is published has them so."""
    words = raw_words(seed, Stream.ORDER, 0, 1000) % np.uint64(100)
    monkeypatch.setattr(noise, "raw_words", lambda *_: words)
    expected = sorted(range(1000), key=lambda i: (words[i], i))
    assert permutation(seed, Stream.ORDER, 0, 1000).tolist() == expected


def assert_uniform(counts: np.ndarray) -> None:
    """Pearson's chi-square within 7 standard deviations of its mean: a fair draw fails once in 10^8 or so."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    assert np.sum((counts - expected) ** 2 / expected) < freedom + 7 * (2 * freedom) ** 0.5 + 20


def test_permutations_are_uniform(seed):
    places = np.stack([permutation(seed, Stream.ORDER, epoch, 8) for epoch in range(4000)])
    np.testing.assert_array_equal(np.sort(places, axis=1), np.tile(np.arange(8), (4000, 1)))
    for place in places.T:
        assert_uniform(np.bincount(place, minlength=8))
    numbers = np.ravel_multi_index(tuple(places[:, :2].T), (8, 8))
    assert_uniform(np.bincount(numbers)[np.unique(numbers)])


@pytest.mark.parametrize(("padding", "probability"), [(0, 0.0), (1, 0.1), (4, 0.5), (64, 1.0)])
def test_offsets_are_uniform_and_flips_as_frequent_as_asked(seed, padding, probability):
    sizes = 2 * padding + 1
    draws = Noise(seed).draws(2, 100_000, padding, probability)
    counts = np.bincount(draws.offset_N2[:, 0] * sizes + draws.offset_N2[:, 1], minlength=sizes**2)
    assert len(counts) == sizes**2
    if padding:  # top and left are independent
        assert_uniform(counts)
    assert abs(draws.flip_N.mean() - probability) <= 6 * (probability * (1 - probability) / 100_000) ** 0.5
