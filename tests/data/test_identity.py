"""What names the results of a dataset: all that decides what networks see of it, and nothing else."""

import dataclasses
import importlib.metadata
import operator
from pathlib import Path

import numpy as np
import PIL.features
import pytest
from various import various_set

from fastwi.config.schema import Config, DataConfig, EngineConfig, OptimizerConfig
from fastwi.config.sweep import SweepOptions, SweepSpec
from fastwi.config.write import config_hash
from fastwi.data.card import Card, read_card
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.planner import plan_sweep


@pytest.fixture
def raw(digits_directory: Path) -> Card:
    return read_card(digits_directory)


@pytest.fixture
def various(tmp_path: Path, seed: int) -> Card:
    return read_card(various_set(tmp_path / "various", seed))


def names(card: Card, **options: object) -> tuple[str, str]:
    """What results of this dataset are filed under: the digest of its contents, and the configuration's hash."""
    config = dataclasses.replace(Config(), data=DataConfig(**options))
    digest = Inputs.of(card, config).digest
    return digest, config_hash(config, digest)


def test_only_what_changes_pixels_changes_the_identity(raw: Card, various: Card) -> None:
    for card in (raw, various):
        plain = names(card)
        assert names(card, streaming="streamed") == names(card, streaming="resident") == plain
        assert names(card, decoder="reference") == plain
        sizes = [plain, names(card, image_size=8), names(card, image_size=9)]
        assert [len(set(kind)) for kind in zip(*sizes, strict=True)] == [3, 3]
    assert names(raw, decoder="ffcv") == names(raw)
    assert all(map(operator.ne, names(various, decoder="ffcv"), names(various)))
    # The size that the images have anyway is no other content.
    assert names(raw, image_size=16)[0] == names(raw)[0]


def test_each_decoder_of_a_sweep_has_results_of_its_own(tmp_path: Path, seed: int) -> None:
    directory = various_set(tmp_path / "various", seed)
    base = Config(
        data=DataConfig(path=str(directory)), optimizer=OptimizerConfig(batch_size=10),
        engine=EngineConfig(precision="fp32"),
    )  # fmt: skip
    decoders = "reference", "ffcv", "auto"
    planned = plan_sweep(SweepSpec(base, {"data.decoder": decoders}, SweepOptions(store=str(tmp_path / "none"))))
    assert len(planned.contents()) == 2
    clones = dict(zip(decoders, (place.clone for place in planned.places), strict=True))
    assert clones["reference"] == clones["auto"] != clones["ffcv"]


def test_whatever_is_read_of_a_dataset_is_in_its_identity(raw: Card) -> None:
    nearest = (float(np.nextafter(raw.std[0], 1)), *raw.std[1:])
    more = {split: (*counts, 0) for split, counts in raw.class_counts.items()}
    changes = [
        {"sha256": raw.sha256 | {"test": "0" * 64}},
        {"sha256": raw.sha256 | {"train": "0" * 64}},
        {"mean": nearest},
        {"std": nearest},
        {"image_shape": (8, 32, 3)},
        {"classes": (*raw.classes, "one more"), "class_counts": more},
    ]
    assert len({names(dataclasses.replace(raw, **change)) for change in ({}, *changes)}) == 1 + len(changes)
    # What is only said of it names nothing.
    assert names(dataclasses.replace(raw, name="other", source="other", writer="other")) == names(raw)


def test_versions_count_where_the_library_is_at_work(
    raw: Card, various: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = dataclasses.replace(various, sizes="one")

    def named() -> dict[str, tuple[str, str]]:
        return {
            "raw": names(raw),
            "resized": names(raw, image_size=9),
            "raw, of several sizes": names(dataclasses.replace(raw, sizes="various")),
            "various": names(various),
            "jpeg": names(jpeg),
            "ffcv": names(jpeg, decoder="ffcv"),
        }

    before = named()
    for place, name, version, expected in (
        (PIL, "__version__", "0.0", {"resized", "raw, of several sizes", "various", "jpeg"}),
        (PIL.features, "version_feature", lambda _: "0.0", {"various", "jpeg"}),
        (importlib.metadata, "version", lambda _: "0.0", {"ffcv"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, version)
            after = named()
        assert {each for each in before if after[each] != before[each]} == expected
