"""A dataset of JPEGs and raw images of several sizes."""

import json
from pathlib import Path

import numpy as np
from stored_samples import random_stored, write_digests, write_images

from fastwi.beton import StoredBeton
from fastwi.data.card import Card


def various_set(directory: Path, seed: int) -> Path:
    """A dataset of JPEGs and raw images of several sizes, 20 x 20 the first of them."""
    directory.mkdir()
    contents, digests, counts = {}, {}, {}
    for number, split in enumerate(("train", "test")):
        images, labels_N = random_stored(seed + number, 40, sides=(5, 30))
        first, _ = random_stored(seed + number, 1, sides=(20, 20))
        images = [*first, *images[1:]]
        write_images(directory / f"{split}.beton", images, labels_N)
        contents[split] = StoredBeton(directory / f"{split}.beton").sha256()
        digests[split] = write_digests(directory / f"{split}.digests", images, labels_N)
        counts[split] = tuple(np.bincount(labels_N, minlength=10).tolist())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    classes = tuple("abcdefghij")
    card = Card(
        "various", classes, (20, 20, 3), dict.fromkeys(digests, 40), counts, mean, std, "made for a test", contents,
        digests, "a test", "mixed", "various",
    )  # fmt: skip
    (directory / "card.json").write_text(json.dumps(card.to_json()))
    return directory
