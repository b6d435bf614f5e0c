"""A sweep over datasets and sizes of images: each network is measured as the one that it is."""

from dataclasses import replace

import numpy as np
import pytest
from studied import measured
from tiny_runs import write_digits

from fastwi.analysis import el2n_scores
from fastwi.analysis.measuring import Bench
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import all_pairs
from fastwi.config.read import read_sweep_request
from fastwi.config.sweep import AnalysisOptions
from fastwi.experiment.tree import OWN
from fastwi.sweep import main

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, image_size):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2 if image_size[0] > 16 else 1), nn.BatchNorm2d(4)
        self.head = f"to_{classes}"
        self.add_module(self.head, nn.Linear(4, classes))
    def forward(self, x):
        return self.get_submodule(self.head)(self.norm(self.conv(x)).relu().mean((2, 3)))
"""
SWEEP = """
data: {{streaming: resident}}
augment: {{padding: 0, flip: 0.0}}
model: {{name: "{here}/net.py:Net"}}
optimizer: {{batch_size: 12, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{k: 1, s: 1, after: 0, recompute_images: 24}}
engine: {{device: cpu, precision: fp32, backend: eager, threads: 1}}
axes: {{data.path: [{here}/ten, {here}/eleven], data.image_size: [16, 32]}}
sweep: {{store: {here}/store, directory: {here}/sweeps, parents: [0, 1], children: 2, measure: [own]}}
"""
OF_THE_AVERAGE = {
    "calibration": ("loss_nats", {"network": "average", "batch_norm": "own"}),
    "blocks": ("test_loss_nats", {"block": "all", "rest": "A", "batch_norm": "averaged"}),
    "matching": (
        "middle_loss_nats", {"relation": "one parent", "split": "test", "matching": "none", "repair": "none"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Networks of one name and four kinds: the number of classes decides the layout, the size the graph alone."""
    here = tmp_path_factory.mktemp("several")
    (here / "net.py").write_text(NETWORK)
    (here / "sweep.yaml").write_text(SWEEP.format(here=here))
    write_digits(here / "ten")
    write_digits(here / "eleven", "classes")
    config = ["--config", str(here / "sweep.yaml")]
    assert main(config) == 0
    with OpenedSweep(read_sweep_request(config).spec) as opened:
        yield opened


def test_an_evaluator_is_of_one_kind_of_cell(several):
    config = several.planned.points[0].config
    configs = [
        config,
        replace(config, data=replace(config.data, last_batch="keep")),
        replace(config, augment=replace(config.augment, padding=1)),
        replace(config, optimizer=replace(config.optimizer, batch_size=6)),
        replace(config, engine=replace(config.engine, precision="bf16")),
    ]
    bench = Bench(several, AnalysisOptions())
    made = [bench.evaluator(each) for each in configs]
    assert len({*map(id, made)}) == 5
    assert [each.config.data.last_batch for each in made] == ["drop", "keep", "drop", "drop", "drop"]
    assert bench.evaluator(config) is made[0]


def test_images_are_scored_by_the_parents_of_their_own_combination_of_axes(several):
    scores = measured("importance", several, splits=2, treatments=("averaged",))["scores"]
    bench, seen = Bench(several, AnalysisOptions()), []
    for pair in all_pairs(several):
        if pair.point.parent == 0:
            (other,) = (each for each in all_pairs(several) if each.variant == pair.variant and each.point.parent)
            train, _ = several.resident_splits(pair.config)
            states = several.states([pair.place.clone, other.place.clone])
            el2n_N = el2n_scores(bench.evaluator(pair.config), states, train)
            found = scores.filter(**dict(pair.variant))["el2n"]
            np.testing.assert_allclose(found, el2n_N, rtol=1e-5)
            seen.append(el2n_N.sum())
    assert len(set(seen)) == 4


def test_all_training_images_count_for_the_noise_where_no_number_is_given(several):
    """24 of them, in batches of 12: 0.05 * 24 / (12 * (1 - 0.9))."""
    pairs = measured("noise", several, alphas=2, treatments=("averaged",))["pairs"]
    assert several.planned.points[0].config.data.train_images == 0
    assert pairs["noise_settings"].to_list() == pytest.approx([1.0] * 8)


@pytest.mark.parametrize("study", OF_THE_AVERAGE)
def test_the_average_is_what_the_sweep_measured(several, study):
    frames = measured(study, several, alphas=3, corruptions=(), treatments=("averaged",))
    column, chosen = OF_THE_AVERAGE[study]
    rows = frames["barrier" if study == "matching" else study].filter(**chosen).rows(named=True)
    found = {(row["data.path"], row["data.image_size"], row["parent_seed"]): row[column] for row in rows}
    expected = {
        (pair.config.data.path, pair.config.data.image_size, pair.point.parent): several.measured[
            pair.place.average, OWN
        ].test_loss
        for pair in all_pairs(several)
    }
    assert len(expected) == len(set(expected.values())) == 2 * 2 * 2
    assert found == pytest.approx(expected, rel=1e-5)
    for row in frames[study].filter(block_number=2).rows(named=True) if study == "blocks" else ():
        assert row["block"] == ("to_11" if row["data.path"].endswith("eleven") else "to_10")
