"""SGD noise: pure functions of (seed, stream, epoch), with the distributions that they promise."""

import itertools

import numpy as np
import pytest

from fastwi.data import noise
from fastwi.data.noise import Draws, Noise, Stream, permutation, raw_words


def assert_same(first: Draws, second: Draws) -> None:
    for name in ("order_N", "offset_N2", "flip_N"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def assert_unlike(first: Draws, second: Draws) -> None:
    """Every kind of draw differs, as unrelated draws do: where two positions agree is left to chance."""
    images = len(first.order_N)
    assert np.mean(first.order_N == second.order_N) < 0.1
    assert np.mean((first.offset_N2 == second.offset_N2).all(axis=1)) < 0.2
    assert abs(np.mean(first.flip_N == second.flip_N) - 0.5) < 6 * 0.5 / images**0.5


def test_golden_words():
    """Recorded: a change of these numbers changes every result that was ever published with them."""
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


def test_same_noise_twice(seed):
    first = Noise(seed).draws(5, 500, 4, 0.5)
    np.random.random(7)  # the global generator is not used
    Noise(seed).draws(9, 123, 2, 0.1)
    Noise(seed + 1).draws(5, 500, 4, 0.5)
    assert_same(Noise(seed).draws(5, 500, 4, 0.5), first)


def test_another_seed_epoch_or_purpose_is_another_noise(seed):
    """`seed + epoch` is the classic mistake: seed 1 at epoch 0 must not be seed 0 at epoch 1."""
    wide = 2**40 + seed
    made = [
        Noise(wide + i, statistics).draws(epoch, 2000, 4, 0.5)
        for i, epoch, statistics in itertools.product((0, 1), (0, 1, 2), (False, True))
    ]
    for first, second in itertools.combinations(made, 2):
        assert_unlike(first, second)


def test_streams_share_no_words(seed):
    words = [raw_words(seed, stream, epoch, 1000) for stream in Stream for epoch in (0, 1, 2**48 - 1)]
    words += [raw_words(seed + 1, Stream.ORDER, 0, 1000)]
    assert len(np.unique(np.concatenate(words))) == 1000 * len(words)


@pytest.mark.parametrize(("noise_seed", "epoch"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**48)])
def test_out_of_range(noise_seed, epoch):
    with pytest.raises(ValueError, match="must be in"):
        raw_words(noise_seed, Stream.ORDER, epoch, 1)
    with pytest.raises(ValueError, match="must be in"):
        Noise(noise_seed).draws(epoch, 4, 4, 0.5)


@pytest.mark.parametrize("images", [1, 2, 1797])
def test_order_is_a_permutation(seed, images):
    order_N = Noise(seed).draws(1, images, 4, 0.5).order_N
    np.testing.assert_array_equal(np.sort(order_N), np.arange(images))


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
    for place in places.T:
        assert_uniform(np.bincount(place, minlength=8))
    numbers = np.ravel_multi_index(tuple(places[:, :2].T), (8, 8))
    assert_uniform(np.bincount(numbers)[np.unique(numbers)])
    assert len(np.unique(numbers)) == 8 * 7


@pytest.mark.parametrize("padding", [0, 1, 4, 64])
def test_offsets_are_uniform(seed, padding):
    sizes = 2 * padding + 1
    offset_N2 = Noise(seed).draws(2, 200_000, padding, 0.5).offset_N2
    for offset_N in offset_N2.T:
        counts = np.bincount(offset_N)
        assert len(counts) == sizes
        assert counts.min() > 0
        if padding:
            assert_uniform(counts)
    if padding == 4:  # top and left are independent
        assert_uniform(np.bincount(offset_N2[:, 0] * sizes + offset_N2[:, 1], minlength=sizes**2))


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_flip_rate(seed, probability):
    rate = Noise(seed).draws(3, 100_000, 4, probability).flip_N.mean()
    assert abs(rate - probability) <= 6 * (probability * (1 - probability) / 100_000) ** 0.5
