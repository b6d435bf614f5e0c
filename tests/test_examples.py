"""The examples do what they say: on state dicts of one's own, and on digits as a folder of PNGs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from commands import rows_of
from PIL import Image
from small_networks import SmallNet, trained

import fastwi
from data_prep.__main__ import main as data_prep
from data_prep.digits import load_digits
from fastwi.data.card import read_card
from fastwi.train import main as train

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, script: str, *arguments: object, expected: int = 0) -> None:
    """As `python examples/SCRIPT ARGUMENTS` would, with the exit code `expected`."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    code: object = 0
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    assert code == expected


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_average_two_checkpoints(seed, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    networks = [trained(SmallNet(), seed + i) for i in range(2)]
    torch.save(networks[0].state_dict(), tmp_path / "a.pt")
    torch.save({"model": torch.nn.DataParallel(networks[1]).state_dict(), "epoch": 9}, tmp_path / "b.pth")
    run(monkeypatch, "average_two_checkpoints.py", "a.pt", "b.pth", f"out.{ending}")
    found = fastwi.load_state_dict(tmp_path / f"out.{ending}")
    assert found.keys() == networks[0].state_dict().keys()
    for name, value in found.items():
        a, b = (network.state_dict()[name] for network in networks)
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), (a.double() + b.double()) / 2, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(value, torch.maximum(a, b))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["a.pt", "b.pt", "out.pt"], "a.pt"),
        (["a.pt", "out.pt"], "usage: "),
        (["small.pt", "other.pt", "out.pt"], "weight"),  # of another architecture
    ],
)
def test_average_of_wrong_files(tmp_path, monkeypatch, capsys, files, named):
    """A missing file or argument, and networks that do not fit together, are one line."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(2)}, "small.pt")
    torch.save({"weight": torch.ones(3)}, "other.pt")
    run(monkeypatch, "average_two_checkpoints.py", *files, expected=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not Path("out.pt").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Digits as an image folder of three classes. Its name is no plain word of YAML."""
    top, digits = tmp_path_factory.mktemp("images") / 'digits, "a: b"', load_digits("digits")
    for part, split, count in (("train", digits.train, 32), ("test", digits.test, 10)):
        for label in range(3):
            (top / part / f"digit_{label}").mkdir(parents=True)
            for i, pixels in enumerate(split.images_NHWC[split.labels_N == label][:count]):
                Image.fromarray(pixels).save(top / part / f"digit_{label}" / f"{i:02d}.png")
    return top


def test_own_network(folder, tmp_path, monkeypatch, capsys):
    """From the folder to the figure; the commands of the README train the same networks."""
    monkeypatch.chdir(tmp_path)
    small = ("--experiment.k=1", "--experiment.s=1", "--experiment.after=0", "--engine.device=cpu",
             "--engine.backend=eager", "--engine.precision=fp32", "--engine.threads=1", "--json")  # fmt: skip
    run(monkeypatch, "own_network.py", f"{folder}/train/..", *small)
    told = json.loads(capsys.readouterr().out)
    card = read_card(Path(f"{folder}_beton"))
    assert card.classes == ("digit_0", "digit_1", "digit_2")
    assert card.image_shape[:2] == (32, 32)
    assert Path(told["directory"], "figure.png").stat().st_size > 0
    assert [row["network"] for row in told["metrics"]][:3] == ["parent", "child 1", "child 2"]
    assert all(row["test_loss"] < 5 for row in told["metrics"])

    assert data_prep(["folder", "--source", str(folder), "--size", "32", "--out", "again"]) == 0
    network = f"{EXAMPLES / 'own_network.py'}:build"
    settings = ("--optimizer.batch_size=32", "--optimizer.learning_rate=0.05")
    assert train(["--data.path=again", f"--model.name={network}", "--run.name=again", *settings, *small]) == 0
    assert rows_of(tmp_path / "runs" / "again") == told["metrics"]


@pytest.mark.parametrize(("arguments", "named"), [(["nowhere"], "nowhere"), ([], "FOLDER")])
def test_own_network_without_images(tmp_path, monkeypatch, capsys, arguments, named):
    """A folder that is not there is one line."""
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "own_network.py", *arguments, expected=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
