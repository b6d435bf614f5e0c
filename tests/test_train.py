"""`python -m fastwi.train`: its files, its refusals, and a run that is killed at any moment goes on to the bit."""

import json
import math
import shutil
import struct
from pathlib import Path

import pytest
import torch
from commands import contents, killed, refused, rows_of
from mappings import config_from_mapping
from PIL import Image
from safetensors.torch import load_file

import fastwi
from data_prep import prepare
from fastwi.config.read import config_from_yaml
from fastwi.data.card import with_checksum
from fastwi.engine.choose import ENGINES, build_network
from fastwi.experiment.store import Store
from fastwi.population import Population
from fastwi.population.layout import Layout
from fastwi.store import main as store
from fastwi.train import main

FILES = ["config.yaml", "figure.png", "manifest.json", "metrics.jsonl", "summary.md"]


def arguments(
    data: Path, runs: Path, *more: str, batch: int = 50, after: int | str = 1, width: float = 0.25
) -> list[str]:
    pairs = {
        "data.path": data, "data.train_images": 300, "data.test_images": 100, "run.directory": runs, "run.name": "r",
        "model.width": width, "optimizer.batch_size": batch, "experiment.k": 2, "experiment.s": 1,
        "experiment.after": after, "engine.device": "cpu", "engine.precision": "fp32", "engine.threads": 1,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in pairs.items()] + list(more)


@pytest.fixture(scope="module")
def whole(digits_directory, tmp_path_factory) -> Path:
    """An uninterrupted run. Tests must not write to it."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(arguments(digits_directory, runs)) == 0
    return runs / "r"


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "runs" / "r")
    return tmp_path / "runs"


def folder_of_noise(folder: Path, train: int, test: int) -> Path:
    """A folder of images of noise: so many of each of 10 classes."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", train), ("test", test)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / part / str(label) / f"{i}.png")
    return folder


def test_files_and_rows(whole):
    assert all((whole / name).stat().st_size > 0 for name in FILES)
    checkpoints = sorted(path.stem for path in (whole / "checkpoints").iterdir())
    assert checkpoints == ["average", "children", "final", "parent"]
    rows = rows_of(whole)
    assert [r["stage"] for r in rows] == ["parent"] * 2 + ["children"] * 2 + ["interpolation"] * 6 + ["after"]
    at = [(r["batch_norm"], r["network"]) for r in rows if r["stage"] == "interpolation"]
    assert at == [(b, n) for b in ("own", "recomputed") for n in ("average", "child 1", "child 2")]
    assert len({r["test_loss"] for r in rows if r["stage"] == "interpolation"}) == 6


def test_finished_run_is_not_trained_again(digits_directory, copied, capsys):
    before = contents(copied / "r" / "checkpoints")
    said = refused(main, capsys, arguments(digits_directory, copied, "--optimizer.learning_rate=0.05"))
    assert "another configuration or dataset" in said
    assert main(arguments(digits_directory, copied, "--json")) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert "already finished" in said.err
    assert shown["directory"] == str(copied / "r")
    assert shown["metrics"] == rows_of(copied / "r")
    assert contents(copied / "r" / "checkpoints") == before


def not_measured(monkeypatch):
    """The estimate of a dry run's seconds times no steps."""
    monkeypatch.setattr("fastwi.report.plan._measure", lambda *_: (1.0, 0.0))


def test_dry_run_trains_nothing(digits_directory, tmp_path, capsys, monkeypatch):
    assert main(arguments(digits_directory, tmp_path / "runs", "--dry-run", "--json")) == 0
    not_measured(monkeypatch)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["epochs_left"], shown["networks_to_measure"], shown["images_to_train"]) == (5, 4, 1500)
    assert shown["config"]["experiment"]["k"] == 2
    assert shown["seconds"] > 0
    assert main(arguments(digits_directory, tmp_path / "runs", "--dry-run", after="3it")) == 0  # half an epoch
    assert "1,350 images to train" in capsys.readouterr().out.replace("\n", " ")
    assert main(arguments(digits_directory, tmp_path / "runs", "--dry-run", "--json", "--experiment.rounds=2")) == 0
    assert json.loads(capsys.readouterr().out)["recomputed_every_epoch"] == 0
    moving = arguments(digits_directory, tmp_path / "runs", "--dry-run", "--optimizer.ema_decay=0.9")
    assert main([*moving, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recomputed_every_epoch"] == 0
    both = ["--dry-run", "--experiment.measure", "own,recomputed"]
    assert main(arguments(digits_directory, tmp_path / "runs", *both, "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    # Beside the average and the children at interpolation: two epochs of the parent and one further one.
    assert (shown["epochs_left"], shown["networks_to_measure"], shown["recomputed_every_epoch"]) == (5, 7, 3)
    assert main(arguments(digits_directory, tmp_path / "runs", *both)) == 0
    assert "for experiment.measure: 3 networks, about " in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_more_epochs_for_a_finished_run(digits_directory, copied, tmp_path, capsys):
    """Nothing is trained twice, and all files are those of a run that was as long from the beginning.

    Files of others stay. The dataset may have moved.
    """
    (copied / "r" / "checkpoints" / "best.safetensors").write_text("mine")
    digits_directory = shutil.copytree(digits_directory, tmp_path / "moved")
    assert main(arguments(digits_directory, copied, after=3)) == 0
    assert main(arguments(digits_directory, tmp_path / "long", after=3)) == 0
    found, expected = copied / "r", tmp_path / "long" / "r"
    for name in ("metrics.jsonl", "summary.md", "figure.png"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    assert (found / "checkpoints" / "best.safetensors").read_text() == "mine"
    (found / "checkpoints" / "best.safetensors").unlink()
    assert contents(found / "checkpoints") == contents(expected / "checkpoints")
    with Store.open(found / "store", create=False) as done:
        assert set(done.attempts().values()) == {1}
    configs = [config_from_yaml((each / "config.yaml").read_text()) for each in (found, expected)]
    assert configs[0].experiment == configs[1].experiment
    weights = [fastwi.load_network(each, which="average").state_dict() for each in (found, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    capsys.readouterr()
    assert "experiment.after: 3" in refused(main, capsys, arguments(digits_directory, copied))  # and not fewer


def test_a_directory_that_lost_its_manifest_keeps_no_network_of_another_run(digits_directory, copied):
    run = copied / "r"
    before = contents(run / "checkpoints")
    (run / "manifest.json").unlink()
    assert main(arguments(digits_directory, copied, width=0.0625)) == 0
    found = contents(run / "checkpoints")
    assert found.keys() == before.keys()
    assert all(found[name] != before[name] for name in before)


def test_a_shorter_run_beside_it_is_named(digits_directory, tmp_path, capsys, monkeypatch):
    """Where no name is given: with the epochs that it has, and the flag that continues it."""
    not_measured(monkeypatch)

    def said(*more: str, after: int) -> list[str]:
        given = [each for each in arguments(digits_directory, tmp_path, *more, after=after) if each != "--run.name=r"]
        assert main(given) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastwi: ")]

    assert said(after=1) == []
    (directory,) = tmp_path.iterdir()
    (line,) = said("--dry-run", after=3)
    assert line.startswith(f"fastwi: {directory}: has 5 of the 7 epochs")
    flag = ["--run.name", directory.name]
    assert f"{' '.join(flag)} " in line
    assert said("--dry-run", "--experiment.children=3", after=3) == []
    assert said("--dry-run", after=0) == []
    assert said("--dry-run", *flag, after=3) == []
    assert said(after=2) == [line.replace("of the 7", "of the 6")]
    assert said(*flag, after=2) == []
    assert said("--dry-run", *flag, after=3) == []
    (longer,) = {*tmp_path.iterdir()} - {directory}
    (line,) = said("--dry-run", after=3)
    assert longer.name in line
    shutil.rmtree(longer)
    (line,) = said("--dry-run", after=3)
    assert line.startswith(f"fastwi: {directory}: has 6 of the 7 epochs")
    (directory / "manifest.json").write_text("{}")
    assert said("--dry-run", after=3) == []


def test_replaced_dataset_is_refused(digits_directory, copied, tmp_path, capsys):
    """The same configuration and path, other images."""
    data = Path(shutil.copytree(digits_directory, tmp_path / "digits"))
    assert main(arguments(data, copied)) == 0  # a dataset that only moved is the same
    capsys.readouterr()
    shutil.rmtree(data)
    prepare("folder", data, folder_of_noise(tmp_path / "folder", 30, 10), writer="raw")
    assert "another configuration or dataset" in refused(main, capsys, arguments(data, copied))


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_changed_normalisation_is_refused_or_named(digits_directory, copied, tmp_path, capsys, key):
    data = Path(shutil.copytree(digits_directory, tmp_path / "digits"))
    before = contents(copied)
    card = json.loads((data / "card.json").read_text())
    (bits,) = struct.unpack("<Q", struct.pack("<d", card[key][0]))
    card[key][0] = struct.unpack("<d", struct.pack("<Q", bits ^ 1 << 50))[0]
    (data / "card.json").write_text(json.dumps(card))
    assert "card.json" in refused(main, capsys, arguments(data, copied))
    (data / "card.json").write_text(json.dumps(with_checksum(card)))
    assert "another configuration or dataset" in refused(main, capsys, arguments(data, copied))
    assert contents(copied) == before


def test_weights_replaced_while_a_run_begins_are_refused(digits_directory, tmp_path, capsys, monkeypatch):
    import fastwi.experiment.resources as resources

    build, weights = resources.build_network, tmp_path / "x.pt"
    configs = [config_from_mapping({"model": {"width": 0.25}, "seeds": {"init": i}}) for i in range(2)]
    networks = [build(config, 10).state_dict() for config in configs]
    fastwi.save_state_dict(networks[0], weights)

    def replaced_before(*given):
        fastwi.save_state_dict(networks[1], weights)
        return build(*given)

    monkeypatch.setattr(resources, "build_network", replaced_before)
    said = refused(main, capsys, arguments(digits_directory, tmp_path / "runs", f"--model.weights={weights}"))
    assert f"{weights}: changed" in said
    assert not (tmp_path / "runs").exists()


def test_refusals(digits_directory, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert "no dataset here" in refused(main, capsys, arguments(tmp_path / "nowhere", runs))
    assert "optimizer.batch_size: 301" in refused(main, capsys, arguments(digits_directory, runs, batch=301))
    assert not runs.exists()
    for engine in ("graph", "stacked"):
        streamed = arguments(digits_directory, runs, "--data.streaming=streamed", f"--engine.name={engine}")
        assert "set data.streaming: resident" in refused(main, capsys, streamed)


def test_networks_that_do_not_fit_the_memory(digits_directory, tmp_path, capsys, monkeypatch):
    not_measured(monkeypatch)
    argv = arguments(digits_directory, tmp_path / "runs", "--experiment.children=4", "--dry-run")
    row = Layout.of(build_network(config_from_mapping({"model": {"width": 0.25}}), 10)).row_bytes
    for free, fits in ((2 * 5 * row, True), (2 * 5 * row - 1, False)):
        monkeypatch.setattr("fastwi.experiment.execution.free_host_bytes", lambda free=free: free)
        assert main(argv) == 0 if fits else "experiment.children: 4 networks" in refused(main, capsys, argv)
    # A later round's average is a sum of the children of all rounds and of the parent.
    rounds = ["--experiment.rounds=3", "--experiment.outer_step=0.5", "--dry-run"]
    argv = arguments(digits_directory, tmp_path / "runs", *rounds)
    for free, fits in ((2 + 7, True), (2 + 6, False)):
        monkeypatch.setattr("fastwi.experiment.execution.free_host_bytes", lambda free=free: free * row)
        assert main(argv) == 0 if fits else "experiment.children: 7 networks" in refused(main, capsys, argv)


def test_an_average_over_time_that_does_not_fit_the_memory(digits_directory, tmp_path, capsys, monkeypatch):
    not_measured(monkeypatch)
    flags = ["--experiment.s=18", "--trajectory.averages=swa", "--dry-run"]
    argv = [each for each in arguments(digits_directory, tmp_path / "runs") if "experiment.s" not in each] + flags
    row = Layout.of(build_network(config_from_mapping({"model": {"width": 0.25}}), 10)).row_bytes
    for free, fits in ((2 + 20, True), (2 + 19, False)):
        monkeypatch.setattr("fastwi.experiment.execution.free_host_bytes", lambda free=free: free * row)
        assert main(argv) == 0 if fits else "trajectory.averages: 20 networks" in refused(main, capsys, argv)


def test_a_damaged_state_is_not_shown_as_a_checkpoint(digits_directory, copied, whole, capsys):
    shutil.rmtree(copied / "r" / "checkpoints")
    for state in (copied / "r" / "store" / "states").rglob("*.safetensors"):
        state.write_bytes(state.read_bytes()[:-100])
    assert main(arguments(digits_directory, copied)) == 2
    assert "store verify --repair" in capsys.readouterr().err
    assert store(["verify", "--repair", str(copied / "r" / "store")]) == 1
    assert main(arguments(digits_directory, copied)) == 0
    assert contents(copied / "r" / "checkpoints") == contents(whole / "checkpoints")


def test_an_edited_accuracy_is_not_shown(digits_directory, copied, whole):
    path = copied / "r" / "metrics.jsonl"
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps({**json.loads(last), "test_accuracy_%": 60.0})]) + "\n")
    assert main(arguments(digits_directory, copied)) == 0
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_killed_at_random_moments(digits_directory, tmp_path, whole, seed):
    """kill -9 twice, wherever the run is; then it ends with the bytes of a run that nobody killed."""
    directory = tmp_path / "r"
    killed("fastwi.train", arguments(digits_directory, tmp_path), directory, 2, seed)
    assert (directory / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("parent", "children", "average", "final"):
        found, expected = (load_file(d / "checkpoints" / f"{name}.safetensors") for d in (directory, whole))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


@pytest.mark.parametrize(
    ("rate", "loss"), [("1e30", "its training loss is"), ("0.05", "its test loss is nan")], ids=["training", "test"]
)
def test_divergence_is_named(digits_directory, tmp_path, capsys, monkeypatch, rate, loss):
    """Also where the training loss is a number still; the results are JSON for every reader."""
    if rate == "0.05":
        monkeypatch.setattr(Population, "finite_M", lambda self: [False] * self.members)
    argv = arguments(digits_directory, tmp_path, f"--optimizer.learning_rate={rate}")
    for _ in range(2):  # the second run finds it so
        assert main(argv) == 1
        assert f"error: parent diverged in epoch 1: {loss}" in capsys.readouterr().err
    (line,) = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert (row["network"], row["epoch"]) == ("parent", 1)
    if rate == "0.05":
        assert math.isfinite(row["train_loss"])
        assert row["test_loss"] == "NaN"
    assert not (tmp_path / "r" / "summary.md").exists()


def test_a_run_whose_jobs_fail_has_failed(digits_directory, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr("fastwi.experiment.worker.score", failing)
    assert main(arguments(digits_directory, tmp_path)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastwi: error: ")]
    assert "RuntimeError: odd" in line


@pytest.mark.parametrize("engine", ["graph", "stacked"])
def test_every_engine_serves_the_command(digits_directory, tmp_path, monkeypatch, engine):
    train_epoch, trained = ENGINES[engine].train_epoch, set[str]()

    def noted(self, *given):
        trained.add(self.name)
        return train_epoch(self, *given)

    monkeypatch.setattr(ENGINES[engine], "train_epoch", noted)
    argv = arguments(digits_directory, tmp_path, f"--engine.name={engine}", "--model.name=convnet", width=0.0625)
    assert main(argv) == 0
    assert trained == {engine}
