"""sweep.keep: what each choice leaves in the store, at the same results; what studies say where they need more."""

import json
import shutil
from pathlib import Path

import polars
import pytest

from fastwi.analyze import main as analyze
from fastwi.config.read import read_sweep_request
from fastwi.config.sweep import KEEP
from fastwi.experiment.planner import plan_sweep
from fastwi.experiment.store import Store
from fastwi.experiment.store.repair import verify
from fastwi.store import main as look_after
from fastwi.sweep import main

SWEEP = """
data: {{path: {data}, train_images: 60, test_images: 50}}
augment: {{padding: 2, flip: 0.0}}
model: {{width: 0.125}}
optimizer: {{batch_size: 20, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{after: 2, recompute_images: 40}}
engine: {{device: cpu, precision: fp32, backend: eager, threads: 1}}
axes: {{experiment.k: [1, 2], experiment.s: [1, 2]}}
sweep: {{store: {here}/store, directory: {here}/sweeps, keep: {keep}}}
"""
KEPT = {"none": 0, "ends": 4 + 4, "stops": 2 + 8 + 4, "all": 2 + 8 + 8}
"""The children's last at each k and the averages' last; all that is a stop; parent, children and averages."""


@pytest.fixture(scope="module")
def sweeps(digits_directory, tmp_path_factory) -> dict[str, list[str]]:
    """The arguments of a finished sweep for each choice. Tests must not write to them."""
    found = {}
    for keep in KEEP:
        here = tmp_path_factory.mktemp(keep)
        (here / "grid.yaml").write_text(SWEEP.format(data=digits_directory, here=here, keep=keep))
        found[keep] = ["--config", str(here / "grid.yaml")]
        assert main(found[keep]) == 0
    return found


def frame(argv: list[str]) -> polars.DataFrame:
    return polars.read_parquet(Path(argv[1]).parent / "sweeps" / "grid" / "results.parquet")


@pytest.mark.parametrize("keep", KEEP)
def test_what_stays(sweeps, keep, capsys):
    argv = sweeps[keep]
    planned = plan_sweep(read_sweep_request(argv).spec)
    kept = {planned.tree.keys[node] for node in planned.kept(keep)}
    assert len(kept) == KEPT[keep]
    with Store.open(planned.spec.options.store, create=False) as store:
        assert store.states() == kept
        assert not verify(store).damage
    assert frame(argv).equals(frame(sweeps["all"]), null_equal=True)
    assert main([*argv, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["epochs_left"] == shown["networks_to_measure"] == 0
    assert shown["bytes"] == shown["bytes_by_keep"][keep]
    one = shown["bytes_by_keep"]["all"] / KEPT["all"]
    assert shown["bytes_by_keep"] == {name: count * one for name, count in KEPT.items()}
    assert main([*argv, "--dry-run"]) == 0
    assert f" {keep} {KEPT[keep] * one / 2**20:,.0f} MiB (chosen)" in capsys.readouterr().out


def epochs_left(argv: list[str], capsys) -> int:
    capsys.readouterr()
    assert main([*argv, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["epochs_left"]


def study(argv: list[str], tmp_path: Path, *cells: str) -> int:
    quick = ("--analysis.alphas", "3", "--analysis.treatments", "[averaged]", "--analysis.directory", str(tmp_path))
    return analyze(["connectivity", *argv, *quick, "--analysis.cells", json.dumps(list(cells))])


def test_a_study_says_what_to_keep(sweeps, tmp_path, capsys):
    assert study(sweeps["ends"], tmp_path, "2,2") == 0
    capsys.readouterr()
    for keep, cell, message in (
        ("none", "2,2", "lacks 2 states, the first at epoch 4; run the sweep with sweep.keep: ends"),
        ("none", "1,1", "lacks 2 states, the first at epoch 2; run the sweep with sweep.keep: stops"),
        ("ends", "1,1", "lacks 2 states, the first at epoch 2; run the sweep with sweep.keep: stops"),
    ):
        assert study(sweeps[keep], tmp_path, cell) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(message)


def test_measurements_are_carried_without_states(sweeps, tmp_path, capsys):
    """metrics.parquet alone makes a store whose sweeps train only what was never measured."""
    argv = sweeps["ends"]
    original = Path(argv[1]).parent
    carried = tmp_path / "carried"
    carried.mkdir()
    shutil.copy(original / "store" / "metrics.parquet", carried)
    assert look_after(["rebuild", str(carried)]) == 0
    there = [*argv, "--sweep.store", str(carried), "--sweep.directory", str(tmp_path / "sweeps")]
    there += ["--sweep.keep", "none"]
    assert epochs_left(there, capsys) == 0
    one_parent = epochs_left([*there, "--sweep.parents", "1"], capsys)
    assert epochs_left([*there, "--sweep.parents", "0..1"], capsys) == one_parent > 0
    assert main([*there, "--sweep.parents", "0..1"]) == 0
    both = polars.read_parquet(tmp_path / "sweeps" / "grid" / "results.parquet")
    assert both["parent_seed"].n_unique() == 2
    assert both.filter(polars.col("parent_seed") == 0).equals(frame(argv), null_equal=True)


def test_more_is_kept_of_a_finished_sweep(sweeps, tmp_path, capsys):
    """What a study asks for is trained again, to the same numbers; what is stored already is not."""
    store = tmp_path / "store"
    shutil.copytree(Path(sweeps["none"][1]).parent / "store", store)
    argv = [*sweeps["none"], "--sweep.store", str(store), "--sweep.directory", str(tmp_path / "sweeps")]
    assert study(argv, tmp_path / "study", "2,2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    more = [*argv, "--sweep.keep", line.rpartition(" ")[2]]
    assert epochs_left(more, capsys) > 0
    assert main(more) == 0
    assert epochs_left(more, capsys) == 0
    assert polars.read_parquet(tmp_path / "sweeps" / "grid" / "results.parquet").equals(
        frame(sweeps["none"]), null_equal=True
    )
    assert study(more, tmp_path / "study", "2,2") == 0
