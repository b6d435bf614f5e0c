"""`python -m fastwi.convert`: checkpoints to ordinary state dicts and back, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_networks import trained

from fastwi.convert import main
from fastwi.models.registry import build_model
from fastwi.population import Population

MODEL = ("--model", "resnet20", "--classes", 10, "--width", 0.25)
OWN = """
from torch import nn

def net(classes, image_size=(1, 1)):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], classes))
def sized(classes, image_size):
    return net(classes, image_size)
"""


def networks(seed: int, count: int) -> list[torch.nn.Module]:
    return [trained(build_model("resnet20", 10, 0.25), seed + m) for m in range(count)]


def run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


def refused(capsys, *argv: object) -> str:
    try:
        code = main([str(word) for word in argv])
    except SystemExit as ended:  # argparse's way
        code = ended.code
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    return output.err.splitlines()[-1]


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_there_and_back(seed, tmp_path, capsys, ending):
    """Members in their order, with momentum."""
    population = Population.from_modules(networks(seed, 3))
    population.momentum_MP[:, : population.layout.parameters[0].numel] = torch.arange(3.0)[:, None]
    whole = tmp_path / "p.safetensors"
    population.save(whole)
    files = [tmp_path / f"{m}.{ending}" for m in range(3)]
    for m, file in enumerate(files):
        run("export", whole, "--member", m, "--out", file)
        state = load_file(file) if ending == "safetensors" else torch.load(file, weights_only=True)
        build_model("resnet20", 10, 0.25).load_state_dict(state)
        assert all(torch.equal(state[key], value) for key, value in population.state_dict(m).items())
        run("export", whole, "--member", m, "--out", file, "--optimizer", "--json")
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"file": str(file), "member": m}
    run("import", *files, "--out", tmp_path / "again.safetensors", *MODEL)
    assert (tmp_path / "again.safetensors").read_bytes() == whole.read_bytes()


def test_exported_momentum_goes_on_in_torch(seed, tmp_path):
    """As the help says: a step of torch.optim.SGD from the file is the step that the momentum means."""
    population = Population.from_modules(networks(seed, 1))
    population.momentum_MP.copy_(population.weights_MP)
    population.save(tmp_path / "p.safetensors")
    run("export", tmp_path / "p.safetensors", "--optimizer", "--out", tmp_path / "x.pt")
    whole = torch.load(tmp_path / "x.pt", weights_only=True)
    network = build_model("resnet20", 10, 0.25)
    network.load_state_dict(whole["state_dict"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.5)
    for name, parameter in network.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = whole["momentum"][name]
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, 0.75 * population.parameters(0)[name])


def test_import_of_files_of_all_kinds(seed, tmp_path, capsys):
    """They become the members, in order, and what was removed is reported."""
    members = networks(seed, 3)
    torch.save(members[0].state_dict(), tmp_path / "0.pt")
    torch.save({"epoch": 3, "model": torch.nn.DataParallel(members[1]).state_dict()}, tmp_path / "1.pth")
    Population.from_modules([members[2]]).save(tmp_path / "2.safetensors")
    files, out = sorted(tmp_path.iterdir()), tmp_path / "p.safetensors"
    run("import", *files, "--out", out, *MODEL, "--json")
    output = capsys.readouterr()
    assert json.loads(output.out) == {"file": str(out), "members": 3}
    assert len(output.err.splitlines()) == 2
    assert all(str(files[1]) in line for line in output.err.splitlines())
    Population.from_modules(members).save(tmp_path / "expected")
    assert out.read_bytes() == (tmp_path / "expected").read_bytes()


def test_import_of_ones_own_network(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(OWN)
    torch.save(build_model("net.py:sized", 7, image_size=(8, 8)).state_dict(), "a.pt")
    argv = ["import", "a.pt", "--out", "p.safetensors", "--model", "net.py:sized", "--classes", "7"]
    assert "give --image-size" in refused(capsys, *argv)
    assert "--image-size: 0" in refused(capsys, *argv, "--image-size", "0")
    assert "a.pt: '1.weight'" in refused(capsys, *argv, "--image-size", "9")
    assert not Path("p.safetensors").exists()
    run(*argv, "--image-size", "8")
    assert Population.load("p.safetensors").parameters(0)["1.weight"].shape == (7, 3 * 8 * 8)


def test_import_of_a_network_of_images_that_are_not_square(tmp_path, capsys, monkeypatch):
    """Height before width, as image_size has them."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(OWN.replace("nn.Flatten()", "nn.LayerNorm((3, *image_size)), nn.Flatten()"))
    network = build_model("net.py:sized", 7, image_size=(8, 4))
    torch.save(network.state_dict(), "a.pt")
    argv = ["import", "a.pt", "--out", "p.safetensors", "--model", "net.py:sized", "--classes", "7"]
    for wrong in ("8x", "x8", "8x0", "8x-4", "08", "8x4x2", "8.5", "", "eight", "999999999", "70000", "8x70000"):
        assert f"--image-size: {wrong}" in refused(capsys, *argv, "--image-size", wrong)
    run(*argv, "--image-size", "8x4")
    assert torch.equal(Population.load("p.safetensors").parameters(0)["0.weight"], network[0].weight)


def test_refusals(seed, tmp_path, capsys):
    members = networks(seed, 2)
    several, state, out = tmp_path / "p.safetensors", tmp_path / "s.pt", tmp_path / "out.pt"
    Population.from_modules(members).save(several)
    torch.save(members[0].state_dict(), state)
    torch.save(members[0], tmp_path / "module.pt")
    into, model = ("--out", tmp_path / "out.safetensors"), MODEL[:4]
    for argv, expected in [
        (("export", several, "--out", out), "holds 2 members"),
        (("export", several, "--member", 2, "--out", out), "no member 2; it has members 0 to 1"),
        (("export", several, "--member", -1, "--out", out), "--member: -1"),
        (("export", several, "--member", 0, "--out", tmp_path / "out.npz"), "neither .safetensors nor .pt"),
        (("export", state, "--out", out), "s.pt"),
        (("export", tmp_path / "none", "--out", out), "No such file"),
        (("export", several), "--out"),
        (("import", state, *into, *model), "'conv.weight' is torch.float32 (4, 3, 3, 3)"),
        (("import", state, *into, "--model", "resnet2", "--classes", "10"), "--model: 'resnet2'"),
        (("import", state, *into, *model, "--width", "0.5", "--model", "a:b"), "--width: 0.5"),
        (("import", state, *into, *model, "--width", "nan"), "--width: nan is not valid; give a number, from 0.06"),
        (("import", state, *into, *model, "--width", "0"), "--width: 0.0 is not valid"),
        (("import", state, *into, "--model", "resnet20", "--classes", "0"), "--classes: 0"),
        (("import", state, "--out", out, *model), "--out"),
        (("import", tmp_path / "module.pt", *into, *model), "save network.state_dict() instead"),
        (("import", *into, *model), "FILE"),
        (("swap",), "'swap'"),
    ]:
        assert expected in refused(capsys, *argv)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module.pt", "p.safetensors", "s.pt"]
