"""`python -m fastwi.sweep`: equal to fastwi.train point by point, each epoch once, whatever is killed."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import polars
import pytest
from begun_stores import measured_so_far
from commands import HUNG, ended, killed, refused, rows_of, started

from fastwi.config.read import read_sweep_request
from fastwi.config.write import to_yaml
from fastwi.data.streamed import processors
from fastwi.experiment.planner import plan_sweep
from fastwi.experiment.store import Store
from fastwi.experiment.store.repair import verify
from fastwi.files import locked
from fastwi.report import results as written
from fastwi.report.rows import COLUMNS, GAIN_COLUMNS, point_rows
from fastwi.sealed import read_sealed, sealed_yaml, write_sealed
from fastwi.sweep import main
from fastwi.train import main as train

KILLS = int(os.environ.get("FASTWI_KILLS", "3"))
"""How often a sweep is killed; a campaign sets more."""

SWEEP = """
data: {{path: {data}, train_images: 100, test_images: 50}}
augment: {{padding: 2, flip: 0.0}}
model: {{width: 0.25}}
optimizer: {{batch_size: 50, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{after: 1, recompute_images: 100}}
engine: {{device: cpu, precision: fp32, threads: 1}}
axes:
  experiment.k: [1, 2]
  experiment.s: [1, 2]
sweep: {{store: {here}/store, directory: {here}/sweeps, children: 4}}
"""
EPOCHS = 2 + 2 * 4 * 2 + 4 * 2  # of the parent, the children, the averages
PROBES = 8 + 8 + 16  # averages with own and recomputed statistics, children with recomputed ones


def sweep_file(directory: Path, data: Path) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "grid.yaml"
    path.write_text(SWEEP.format(data=data, here=directory))
    return ["--config", str(path)]


def results(directory: Path) -> polars.DataFrame:
    return polars.read_parquet(directory / "sweeps" / "grid" / "results.parquet")


def attempts(directory: Path) -> dict[tuple[str, str], int]:
    with Store.open(directory / "store", create=False) as store:
        return store.attempts()


def tree_is_done(directory: Path) -> None:
    """The store holds every epoch and every probe of the grid once, by its measurements."""
    with Store.open(directory / "store", create=False) as store:
        found = store.measurements().values()
        assert not verify(store).damage
    assert sum(m.train_loss is not None for m in found) == EPOCHS
    assert sum(m.train_loss is None for m in found) == PROBES


@pytest.fixture(scope="module")
def whole(digits_directory, tmp_path_factory) -> Path:
    """A sweep that nobody disturbed. Tests must not write to it."""
    directory = tmp_path_factory.mktemp("sweep")
    assert main(sweep_file(directory, digits_directory)) == 0
    return directory


@pytest.fixture
def copied(whole, digits_directory, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    sweep_file(tmp_path / "copy", digits_directory)
    return tmp_path / "copy"


def same_results(found: Path, expected: Path) -> None:
    assert results(found).equals(results(expected), null_equal=True)


OPTIONS = {
    "experiment.batch_norm": "recompute", "experiment.momentum": "keep", "experiment.continue_children": "true",
    "experiment.children_rate_factor": "0.1", "sweep.alphas": "[0.25]", "sweep.children": "2",
    "axes.experiment.k": "[1]", "axes.experiment.s": "[1]",
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["grid", "every option"])
def test_each_point_equals_the_same_point_run_alone(whole, digits_directory, tmp_path, options):
    argv = [*sweep_file(tmp_path, digits_directory), *(f"--{name}={value}" for name, value in options.items())]
    if options:
        assert main(argv) == 0
    planned = plan_sweep(read_sweep_request(argv).spec)
    assert len(planned.points) == (1 if options else 8)
    with Store.open((tmp_path if options else whole) / "store", create=False) as store:
        measurements = store.measurements()
        assert set(store.attempts().values()) == {1}
    for number, (point, place) in enumerate(zip(planned.points, planned.places, strict=True)):
        (tmp_path / "point.yaml").write_text(to_yaml(point.config))
        alone = [
            "--config",
            str(tmp_path / "point.yaml"),
            "--run.directory",
            str(tmp_path),
            "--run.name",
            f"{number}",
        ]
        assert train(alone) == 0
        rows = rows_of(tmp_path / f"{number}")
        assert point_rows(point, place, measurements) == rows
        rates = {row["learning_rate"] for row in rows if row["stage"] == "after"}
        assert len(rates) == (2 if options else 1)


@pytest.mark.parametrize("made_of", [{"precision": "bfloat16"}, {"inputs": ["0" * 64]}], ids=["precision", "inputs"])
def test_an_old_manifest_or_figure_does_not_stand_for_new_results(copied, whole, monkeypatch, made_of):
    directory = copied / "sweeps" / "grid"
    assert read_sweep_request(["--config", str(directory / "sweep.yaml")]).spec.axes["experiment.k"] == (1, 2)
    (directory / "curves-2.png").write_bytes((directory / "curves.png").read_bytes())
    (directory / "curves_mine").mkdir()
    for name in ("mine.png", "curves.png.old"):
        (directory / name).write_bytes(b"a file of the user's own")
    # Results of another precision or dataset were made elsewhere; and the store's sweep is not where it was.
    about = read_sealed(directory / "manifest.json", "")
    write_sealed(directory / "manifest.json", {**about, **made_of, "commit": "another"})
    (note,) = (copied / "store" / "sweeps").iterdir()
    text = note.read_text().rpartition("\n#")[0]
    assert str(whole / "sweeps") in text
    note.write_text(sealed_yaml(text.replace(str(whole / "sweeps"), str(copied / "moved"))))
    read = written._measured

    def in_turn(*about):
        """An earlier state of the store must not be written after a later one."""
        with locked(directory / ".lock", exclusive=True, wait=False) as free:
            assert not free
        return read(*about)

    monkeypatch.setattr(written, "_measured", in_turn)
    assert main(["--config", str(copied / "grid.yaml")]) == 0
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (list(note.parent.iterdir()), manifest["commit"] == "another") == ([note], False)
    files = {"results.parquet", "gains.parquet", "sweep.yaml"}
    assert set(manifest["files"]) == files | {
        f"{name}.{kind}" for name in ("heatmap", "curves") for kind in ("png", "svg")
    }
    assert not (directory / "curves-2.png").exists()
    for name in ("mine.png", "curves.png.old"):
        assert (directory / name).read_bytes() == b"a file of the user's own"
    for name, columns in (("results", COLUMNS), ("gains", GAIN_COLUMNS)):
        described = json.loads(polars.read_parquet_metadata(directory / f"{name}.parquet")["fastwi.columns"])
        assert list(described) == list(columns)
    rows = polars.read_parquet(directory / "results.parquet").filter(metric="train_loss")
    assert manifest["cost"]["trained_epochs"] == rows["state"].n_unique()
    with Store.open(copied / "store", create=False) as store:
        seconds = sum(found.seconds for found in store.measurements().values())
    assert manifest["cost"]["seconds"] == pytest.approx(seconds, abs=0.1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastwi.report.curves.draw_curves", killed)
    assert main(["--config", str(copied / "grid.yaml")]) == 130
    assert not (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        ([], 0),
        (["--sweep.parents", "[0, 3]"], EPOCHS),
        (["--axes.experiment.k", "[1, 2, 3]"], 1 + 8 + 4),  # it goes on from the state at k = 2
        (["--sweep.name", "other", "--axes.experiment.k", "[2]", "--axes.experiment.s", "[2, 3]"], 4 + 2),
    ],
    ids=["nothing", "a parent", "a k", "another sweep"],
)
def test_only_what_is_new_is_trained(copied, whole, capsys, more, epochs):
    before, manifest = attempts(copied), copied / "sweeps" / "grid" / "manifest.json"
    elsewhere = {"device": {"cpu": "of another machine"}, "commit": "another", "versions": {}, "backend": "another"}
    write_sealed(manifest, {**read_sealed(manifest, ""), **elsewhere})
    assert main(["--config", str(copied / "grid.yaml"), *more, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    # How results were made: where the last work on them was done.
    made = json.loads((Path(shown["directory"]) / "manifest.json").read_text())
    assert all((made[name] == value) == (not more) for name, value in elsewhere.items())
    assert shown["missing"] == 0
    assert Path(shown["directory"]).parent == copied / "sweeps"
    after = attempts(copied)
    assert set(after.values()) == {1}
    with Store.open(copied / "store", create=False) as store:
        found, states = store.measurements(), store.states()
    assert sum(found[name].train_loss is not None for name in after.keys() - before.keys()) == epochs
    # What the first sweep measured and kept is as it was.
    first = results(whole)
    same = results(copied).join(first, on=["state", "batch_norm", "metric", "value"], how="inner", nulls_equal=True)
    assert same.height == first.height
    for stage, kept in (("parent", 2), ("children", 16), ("after", 8)):
        assert len(states & set(first.filter(polars.col("stage") == stage)["state"])) == kept


def test_dry_run(digits_directory, tmp_path, capsys):
    argv = sweep_file(tmp_path / "new", digits_directory)
    assert main([*argv, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["points"], shown["epochs"], shown["naive_epochs"]) == (8, EPOCHS, 44)
    assert (shown["epochs_left"], shown["networks_to_measure"]) == (EPOCHS, PROBES)
    assert shown["seconds"] > 0
    assert shown["bytes"] > 20 * 100_000
    assert main([*argv, "--dry-run"]) == 0
    assert "26 epochs in the tree, 44" in capsys.readouterr().out
    assert not (tmp_path / "new" / "store").exists()
    # Each of two parts has the parent and the half of the rest.
    assert main([*argv, "--dry-run", "--json", "--shard", "1/2"]) == 0
    part, half = json.loads(capsys.readouterr().out), (EPOCHS - 2) // 2
    assert (part["points"], part["epochs"], part["epochs_left"]) == (4, 2 + half, 2 + half)
    assert part["networks_to_measure"] == PROBES // 2
    assert part["bytes"] < shown["bytes"]
    assert part["directory"] == shown["directory"]


@pytest.mark.parametrize(
    ("axis", "measured"),
    [
        ("data.image_size=8,16", 2),
        ("augment.padding=0,2,4", 2),
        ("augment.flip=0,0.5", 2),
        ("optimizer.batch_size=20,50", 2),
        ("optimizer.ema_decay=0,0.9", 2),
        ("optimizer.momentum=0,0.9", 2),
        ("optimizer.nesterov=false,true", 2),
        ("model.width=0.25,0.5", 2),
        ("optimizer.momentum=0.8,0.9", 1),
        ("data.train_images=100,110", 1),
        ("optimizer.learning_rate=0.1,0.05", 1),
    ],
)
def test_dry_run_measures_each_speed(digits_directory, tmp_path, capsys, monkeypatch, axis, measured):
    speeds = iter([10.0, 40.0])
    monkeypatch.setattr("fastwi.report.plan._measure", lambda *_: (next(speeds), 0.0))
    argv = [*sweep_file(tmp_path, digits_directory), "--dry-run", "--json", f"--axes.{axis}"]
    assert main(argv) == 0
    assert len(list(speeds)) == 2 - measured
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("after", ["1", "1it", "1ep1it"])
def test_dry_run_counts_the_images_of_steps(digits_directory, tmp_path, capsys, monkeypatch, keep, after):
    """90 images in batches of 40: an epoch has two, and where the rest is kept, one of 10."""
    monkeypatch.setattr("fastwi.report.plan._measure", lambda *_: (1.0, 0.0))
    argv = [*sweep_file(tmp_path, digits_directory), "--dry-run", "--json", "--sweep.children=2", "--sweep.parents=0"]
    argv += ["--data.train_images=90", "--optimizer.batch_size=40", f"--data.last_batch={'keep' if keep else 'drop'}"]
    argv += ["--axes.experiment.k=2it", "--axes.experiment.s=1", f"--experiment.after={after}"]
    argv += ["--experiment.continue_parent=none", "--experiment.recompute_images=0"]
    assert main(argv) == 0
    epoch = 90 if keep else 80
    further = {"1": epoch, "1it": 10 if keep else 40, "1ep1it": epoch + (10 if keep else 40)}[after]
    assert json.loads(capsys.readouterr().out)["images_to_train"] == 80 + 2 * epoch + further


def test_damaged_states_are_named_and_trained_again(copied, whole, seed):
    draw = random.Random(seed)
    files = sorted((copied / "store" / "states").rglob("*.safetensors"))
    for path in files:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    with Store.open(copied / "store", create=False) as store:
        damage = verify(store, repair=True).damage
    assert len(damage) == len(files)
    assert main(["--config", str(copied / "grid.yaml")]) == 0
    same_results(copied, whole)
    tree_is_done(copied)


def test_a_state_found_damaged_on_the_way_is_trained_again(copied, whole, capsys):
    """k = 2's state is needed for new children, and it is damaged."""
    (path,) = [p for p in (copied / "store" / "states").rglob("*") if p.stem == parent_state(whole, 2)]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["--config", str(copied / "grid.yaml"), "--sweep.children", "6"]) == 0
    said = capsys.readouterr().err
    assert path.name in said
    assert attempts(copied)[parent_state(whole, 2), "own"] == 2
    assert results(copied).filter(polars.col("pair") == 0).equals(results(whole).filter(polars.col("pair") == 0))


def parent_state(directory: Path, epoch: int) -> str:
    found = results(directory).filter(polars.col("stage") == "parent", polars.col("epoch") == epoch)
    return found["state"][0]


def test_killed_at_random_moments(digits_directory, tmp_path, whole, seed):
    """kill -9, wherever the sweep is; it ends with the same results, and only what was in progress is begun again."""
    kills = killed("fastwi.sweep", sweep_file(tmp_path, digits_directory), tmp_path, KILLS, seed)
    same_results(tmp_path, whole)
    tree_is_done(tmp_path)
    counts = attempts(tmp_path)
    assert len(counts) == EPOCHS + PROBES
    # A kill costs what was in progress or not written yet.
    assert max(counts.values()) <= 1 + kills


def test_two_processes_on_one_store(digits_directory, tmp_path, whole):
    argv = sweep_file(tmp_path, digits_directory)
    for process in [started("fastwi.sweep", argv), started("fastwi.sweep", argv)]:
        ended(process)
    same_results(tmp_path, whole)
    tree_is_done(tmp_path)
    assert set(attempts(tmp_path).values()) == {1}


def test_shards(digits_directory, tmp_path, whole, capsys):
    """Two halves, one after the other; the second finds the parent's epochs done."""
    argv = sweep_file(tmp_path, digits_directory)
    assert main([*argv, "--shard", "1/2"]) == 0
    half = attempts(tmp_path)
    assert len(half) == 2 + 8 + 4 + PROBES // 2
    capsys.readouterr()
    assert main([*argv, "--shard", "2/2"]) == 0
    same_results(tmp_path, whole)
    assert set(attempts(tmp_path).values()) == {1}


@pytest.mark.parametrize("options", [[], ["--shard=1/2"]])
def test_a_sweep_whose_measurements_are_missing_is_not_done(digits_directory, tmp_path, monkeypatch, options):
    """Without another problem: measured by this process or others, and removed since."""
    monkeypatch.setattr("fastwi.experiment.execution.carry_out_planned", lambda *_: [])
    assert main([*sweep_file(tmp_path, digits_directory), *options]) == 3


def test_a_sweep_whose_jobs_fail_is_not_done(digits_directory, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr("fastwi.experiment.worker.score", failing)
    assert main([*sweep_file(tmp_path, digits_directory), "--shard", "1/2"]) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastwi: error: ")]
    assert "RuntimeError: odd" in line


def test_a_network_that_diverges_is_named_and_the_others_go_on(digits_directory, tmp_path, capsys):
    argv = [*sweep_file(tmp_path, digits_directory), "--axes.optimizer.learning_rate", "[0.05, 1.0e+30]"]
    argv += ["--sweep.children", "2", "--axes.experiment.k", "[1]"]
    assert main(argv) == 3
    said = capsys.readouterr()
    assert "diverged: its training loss is nan in epoch 1" in said.err
    assert "not there yet" not in said.out  # what would come of it never is
    (summary,) = (tmp_path / "sweeps").glob("*/summary.md")
    assert re.search(r"\d averages measured; 1 network diverged", summary.read_text())
    with Store.open(tmp_path / "store", create=False) as store:
        epochs = [m for m in store.measurements().values() if m.train_loss is not None]
    assert sum(m.train_loss == m.train_loss for m in epochs) == 1 + 2 * 2 + 2
    assert len(epochs) == 1 + 2 * 2 + 2 + 1
    before = attempts(tmp_path)
    assert main([*argv, "--shard", "1/1"]) == 3  # and nothing is begun again
    assert attempts(tmp_path) == before
    capsys.readouterr()
    assert main([*argv, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["epochs_left"] == shown["networks_to_measure"] == 0


def test_refusals(digits_directory, tmp_path, capsys):
    argv = sweep_file(tmp_path, digits_directory)
    assert "experiment.kk" in refused(main, capsys, [*argv, "--experiment.kk", "3"])
    assert "no dataset here" in refused(main, capsys, [*argv, "--data.path", str(tmp_path / "nowhere")])
    assert "optimizer.batch_size: 2000" in refused(
        main, capsys, [*argv, "--optimizer.batch_size", "2000", "--data.train_images", "0"]
    )
    (tmp_path / "file").write_text("")
    assert "file" in refused(main, capsys, [*argv, "--sweep.store", str(tmp_path / "file")])
    assert not (tmp_path / "sweeps").exists()
    # Before all is trained for it, not after.
    (tmp_path / "sweeps").write_text("")
    assert str(tmp_path / "sweeps") in refused(main, capsys, argv)
    assert measured_so_far(tmp_path) == 0


def test_keys_of_a_file_that_a_sweep_does_not_use_are_named(tmp_path, capsys):
    """In place of seeds and children that the user means and does not get."""
    (tmp_path / "grid.yaml").write_text("experiment: {children: 4}\nseeds: {init: 3, statistics_noise: 5}\n")
    assert main([f"--config={tmp_path / 'grid.yaml'}", f"--data.path={tmp_path}"]) == 2
    *lines, error = capsys.readouterr().err.splitlines()
    assert "no dataset" in error
    words = [("experiment.children: 4", "sweep.tuple_size"), ("seeds.init: 3", "sweep.parents")]
    for line, named in zip(lines, words, strict=True):
        assert all(word in line for word in named)


@pytest.mark.ray
def test_ray_with_two_workers_one_killed_midway(digits_directory, tmp_path, whole, monkeypatch):
    pytest.importorskip("ray")
    if processors() < 2:
        pytest.skip("Ray has one worker a processor at most")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    argv = sweep_file(tmp_path, digits_directory)
    process = started(
        "fastwi.sweep", [*argv, "--sweep.executor", "ray", "--sweep.workers", "2", "--sweep.population", "1"]
    )
    deadline, dead = time.monotonic() + HUNG, []
    while process.poll() is None and not dead and time.monotonic() < deadline:
        time.sleep(0.05)
        if measured_so_far(tmp_path) >= 4:  # of 58: both workers are at it
            dead = _actors(process.pid)[:1]
            for pid in dead:
                os.kill(pid, signal.SIGKILL)
    ended(process)
    assert dead
    same_results(tmp_path, whole)
    tree_is_done(tmp_path)
    assert set(attempts(tmp_path).values()) == {1}  # a worker's death is the executor's business


def _actors(driver: int) -> list[int]:
    """Processes of Ray actors below `driver`."""
    parents, actors = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::_Actor"):
                actors.append(int(path.name))
        except OSError:
            continue

    def below(pid: int) -> bool:
        return pid == driver or (pid in parents and below(parents[pid]))

    return [pid for pid in actors if below(pid)]
