"""FFCV's Loader as a decoder, and betons that FFCV writes.

In one process of its own: importing and compiling take seconds, and numba may complain of compiled code that is
collected.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_samples import jpeg_of, random_stored, smooth_image, write_digests, write_stored

from fastwi.beton import StoredImage
from fastwi.beton.format import JPEG, RAW

pytestmark = [
    pytest.mark.ffcv,
    pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed"),
]

PROGRAM = """
import io, json, sys, threading, time
import numpy as np, torch
from PIL import Image
torch.set_num_threads(2)

from fastwi.beton import StoredBeton
from fastwi.beton.image_digests import ImageDigests
from fastwi.data.pool import PooledDecoder
from fastwi.data.streamed import open_decoder
from fastwi.errors import BetonError

seed, folder, tests, good = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
generator = np.random.default_rng(seed)
found = {"raw equal": [], "mean": [], "most": [], "seconds to leave": [], "damaged": [], "flipped": [], "equal": []}

def epoch(decoder, at_N, size, side):
    return torch.cat(list(decoder.chunks(at_N, size, side, side, False))).int()

# The same order with both decoders, resized and, for the last of the good images, as they are.
beton = StoredBeton(folder + "/mixed.beton")
ffcv, reference = open_decoder(beton, "ffcv"), PooledDecoder(beton)
for at_N, side in [(generator.integers(0, good, 70), 17), (np.arange(good // 2, good), 20)]:
    ours, theirs = epoch(reference, at_N, 16, side), epoch(ffcv, at_N, 16, side)
    raw = torch.from_numpy(beton.modes_N[at_N] == 1)
    found["raw equal"].append([int(raw.sum()), torch.equal(ours[raw], theirs[raw])])
    difference = (ours - theirs)[~raw].abs().float()
    found["mean"].append(float(difference.mean()))
    found["most"].append(float(difference.max()))
found["threads"] = torch.get_num_threads()

# Left wherever FFCV's thread is: decoding, waiting for room, or at its end.
before = threading.active_count()
for taken in range(1, 8):
    open_at_once = [ffcv.chunks(np.arange(good), 10, 20, 20, False) for _ in range(3)]
    for chunks in open_at_once:
        for _ in range(taken):
            next(chunks, None)
    time.sleep(0.02)
    begun = time.monotonic()
    del chunks, open_at_once
    found["seconds to leave"].append(time.monotonic() - begun)

for n in range(good, len(beton)):
    try:
        epoch(ffcv, np.array([0, n, 1]), 2, 8)
    except BetonError as error:
        found["damaged"].append(str(error))
found["threads left"] = threading.active_count() - before

# One bit of a JPEG and one of pixels, each otherwise decoded without a word, where digests are known.
digests = ImageDigests.read(folder + "/mixed.digests", sys.argv[5])
for n in (good - 1, good - 2):
    data = bytearray(open(folder + "/mixed.beton", "rb").read())
    data[int(beton._pointers_N[n] + beton.sizes_N[n] // 2)] ^= 4
    open(folder + "/flipped.beton", "wb").write(data)
    changed = StoredBeton(folder + "/flipped.beton")
    changed.hold_to(digests)
    decoder = open_decoder(changed, "ffcv")
    epoch(decoder, np.array([0, 1]), 2, 8)
    try:
        epoch(decoder, np.array([0, n, 1]), 2, 8)
    except BetonError as error:
        found["flipped"].append(str(error))

# FFCV as the writer.
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
sys.path.insert(0, tests)
from stored_samples import smooth_image

images = [smooth_image(generator, int(h), int(w)) for h, w in generator.integers(4, 40, (40, 2))]
labels = generator.integers(0, 10, 40)

class Rows:
    def __len__(self):
        return 40
    def __getitem__(self, n):
        return images[n], int(labels[n])

for mode in ("raw", "jpg", "proportion"):
    fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
    DatasetWriter(f"{folder}/{mode}.beton", fields, num_workers=1).from_indexed_dataset(Rows())
    written = StoredBeton(f"{folder}/{mode}.beton")
    assert written.labels_N.tolist() == labels.tolist()
    found[mode] = sorted(set(written.modes_N.tolist()))
    for n, image_HWC in enumerate(images):
        height, width = written.size(n)
        assert (height, width) == image_HWC.shape[:2]
        decoded = next(PooledDecoder(written).chunks(np.array([n]), 1, height, width, False))[0].numpy()
        if written.modes_N[n] == 0:
            image_HWC = np.asarray(Image.open(io.BytesIO(written.read(n))).convert("RGB"))
        found["equal"].append(np.array_equal(decoded, image_HWC))
print(json.dumps(found))
"""

GOOD = 60


def test_ffcv_as_decoder_and_as_writer(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [*random_stored(seed, GOOD // 2)[0], *random_stored(seed + 1, GOOD // 2, sides=(20, 20))[0]]
    images[0] = StoredImage(RAW, 1, 2, bytes(6))
    images[-1] = StoredImage(RAW, 20, 20, smooth_image(generator, 20, 20).tobytes())
    images[-2] = StoredImage(JPEG, 20, 20, jpeg_of(smooth_image(generator, 20, 20)))
    jpeg, other = (jpeg_of(smooth_image(generator, height, 12)) for height in (12, 6))
    cmyk = jpeg_of(smooth_image(generator, 12, 12), "CMYK")
    images += [StoredImage(JPEG, 12, 12, data) for data in (jpeg[:-20], b"no image", other, cmyk)]
    labels_N = np.zeros(len(images), np.int64)
    path = write_stored(tmp_path / "mixed.beton", images, labels_N)
    digests = write_digests(tmp_path / "mixed.digests", images, labels_N)

    arguments = [str(seed), str(tmp_path), str(Path(__file__).parents[1]), str(GOOD), digests.sha256]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])

    for count, equal in found["raw equal"]:
        assert count > 0
        assert equal
    # FFCV asks for the fast inverse DCT: about one intensity off in the mean, more where the quality is high.
    assert 0 < min(found["mean"]) <= max(found["mean"]) < 4
    assert max(found["most"]) <= 64
    assert found["threads"] == 2
    assert found["threads left"] == 0
    assert max(found["seconds to leave"]) < 10
    cut, none, wrong_size, four_colours = found["damaged"]
    assert cut.startswith(f"{path}: image {GOOD} is damaged")
    assert none.startswith(f"{path}: image {GOOD + 1} is not a JPEG")
    assert wrong_size.startswith(f"{path}: image {GOOD + 2} is a JPEG of 6 x 12 pixels, not 12 x 12 as the file says")
    assert four_colours.startswith(
        f"{path}: image {GOOD + 3} is damaged, or a JPEG of a kind that FFCV cannot decode"
    )
    for n, said in zip((GOOD - 1, GOOD - 2), found["flipped"], strict=True):
        assert said.startswith(f"{tmp_path}/flipped.beton: image {n} is not the one")
    assert (found["raw"], found["jpg"], found["proportion"]) == ([RAW], [JPEG], [JPEG, RAW])
    assert len(found["equal"]) == 120
    assert all(found["equal"])
