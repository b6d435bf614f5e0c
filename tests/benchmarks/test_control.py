"""The control trains the built-in ResNet20, on the images that data_prep makes, and goes on where it was stopped."""

import io
import itertools
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from stored_samples import read_beton

from benchmarks.peers import beside, control
from data_prep import prepare
from data_prep.digits import load_digits
from fastwi.models.registry import build_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """30 training and 20 test digits, a class a folder."""
    path = tmp_path_factory.mktemp("images") / "digits.zip"
    digits = load_digits("digits")
    with zipfile.ZipFile(path, "w") as archive:
        for name, split, count in (("train", digits.train, 3), ("test", digits.test, 2)):
            for label in range(10):
                for n, place in enumerate(np.flatnonzero(split.labels_N == label)[:count]):
                    stream = io.BytesIO()
                    Image.fromarray(split.images_NHWC[place]).save(stream, "PNG")
                    archive.writestr(f"digits/{name}/class{label}/{n}.png", stream.getvalue())
    return path


def test_its_network_is_the_built_in_resnet20(seed):
    torch.manual_seed(seed)
    ours, theirs = build_model("resnet20", 10, 1.0).double(), control.resnet20().double()
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        mine.copy_(other)
    x_NCHW = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW))


def test_it_reads_what_data_prep_reads(source, tmp_path):
    prepare("folder", tmp_path / "digits", source=source)
    for split in ("train", "test"):
        images_NCHW, labels_N = control.read(source, split)
        found = read_beton(tmp_path / "digits" / f"{split}.beton")
        np.testing.assert_array_equal(images_NCHW.permute(0, 2, 3, 1).numpy(), found.images_NHWC)
        np.testing.assert_array_equal(labels_N.numpy(), found.labels_N)


def test_crops_are_of_the_padded_image_and_some_are_flipped(seed):
    torch.manual_seed(seed)
    image_CHW = torch.randint(1, 256, (3, 8, 8), dtype=torch.uint8)
    padded = torch.nn.functional.pad(image_CHW, (4, 4, 4, 4))
    crops = {padded[:, y : y + 8, x : x + 8].numpy().tobytes() for y in range(9) for x in range(9)}
    flipped = {padded[:, y : y + 8, x : x + 8].flip(2).numpy().tobytes() for y in range(9) for x in range(9)}
    found = [crop.numpy().tobytes() for crop in control.augmented(image_CHW.expand(400, 3, 8, 8))]
    assert {*found} <= crops | flipped
    assert len({*found}) > 100
    assert 0.4 < np.mean([crop in flipped for crop in found]) < 0.6


def test_it_goes_on_as_if_it_had_not_been_stopped(source, tmp_path, monkeypatch):
    """Stopped in its second epoch."""

    def train(out):
        control.main([str(source), "--out", str(out), "--epochs", "4", "--batch", "8"])
        return (out / "epochs.jsonl").read_text()

    whole = train(tmp_path / "whole")
    augmented, calls = control.augmented, itertools.count()

    def stopped(x_NCHW):
        if next(calls) == 4:  # an epoch has three
            raise KeyboardInterrupt
        return augmented(x_NCHW)

    with monkeypatch.context() as patched:
        patched.setattr(control, "augmented", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts")
    assert whole.startswith((tmp_path / "parts" / "epochs.jsonl").read_text())
    assert train(tmp_path / "parts") == whole
    assert len(set(whole.splitlines())) == 4


def test_a_run_beside_the_control(tmp_path, capsys):
    """The children's rows, and those with recomputed statistics, are no part of the curve."""
    own = {"network": "parent", "batch_norm": "own"}
    kinds = [own, own | {"network": "child"}, own | {"batch_norm": "recomputed"}]
    rows = [
        kind | {"epoch": epoch, "train_loss": 3.0 * epoch + i, "test_accuracy_%": 2.0 * epoch + i}
        for epoch in range(1, 26)
        for i, kind in enumerate(kinds)
    ]
    others = [{"epoch": epoch, "train_loss": 5.0 * epoch, "test_accuracy": 4.0 * epoch} for epoch in range(1, 23)]
    run, theirs = tmp_path / "metrics.jsonl", tmp_path / "epochs.jsonl"
    for path, lines in ((run, rows), (theirs, others)):
        path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    beside.main([str(run), str(theirs), "--out", str(tmp_path / "both.png")])
    *_, at_20, means = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert [float(word) for word in at_20 if word] == [20, 60, 100, 40, 80]
    name, *numbers = filter(None, means)
    assert "13 to 22" in name  # the last ten epochs that both have
    assert list(map(float, numbers)) == [52.5, 87.5, 35, 70]
    with Image.open(tmp_path / "both.png") as figure:
        assert figure.width > 1000
