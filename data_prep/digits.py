"""scikit-learn's bundled handwritten digits: the dataset that needs no download and trains on any CPU."""

import numpy as np

from data_prep.dataset import ImageSet, Split
from fastwi.data.resident import ranks_in_class

_SOURCE = (
    "scikit-learn load_digits: 8 x 8 intensities 0..16 scaled to 0..255, each pixel repeated 2 x 2, "
    "grey repeated to RGB; stratified split of 1,437 and 360 by Philox, seed 0"
)


def load_digits(name: str) -> ImageSet:
    """1,437 training and 360 test images, 16 x 16; classes "0" to "9", in the test split as in the whole.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    import sklearn.datasets

    bundle = sklearn.datasets.load_digits()
    grey_NHW = (bundle.images.astype(np.uint16) * 255 + 8) // 16  # + 8: to the nearest
    grey_NHW = grey_NHW.astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    images_NHWC = np.repeat(grey_NHW[..., None], 3, axis=3)
    labels_N = bundle.target.astype(np.int64)
    test_N = stratified_choice(labels_N, 360, seed=0)
    return ImageSet(
        name=name,
        classes=tuple(str(digit) for digit in range(10)),
        train=Split(images_NHWC[~test_N], labels_N[~test_N]),
        test=Split(images_NHWC[test_N], labels_N[test_N]),
        source=_SOURCE,
    )


def stratified_choice(labels_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` of N samples, each class by its share (largest remainders): bool `[N]`.

    Within a class those with the smallest draws, Philox's raw words, which no version of NumPy may change.
    """
    draws_N = np.random.Philox(key=seed).random_raw(len(labels_N))
    quotas_K, remainders_K = np.divmod(np.bincount(labels_N) * count, len(labels_N))
    rounded_up = np.argsort(-remainders_K, kind="stable")[: count - quotas_K.sum()]
    quotas_K[rounded_up] += 1
    rank_N = ranks_in_class(labels_N, np.argsort(draws_N, kind="stable"))
    return np.asarray(rank_N < quotas_K[labels_N])
