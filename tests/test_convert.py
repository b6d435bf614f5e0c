"""`python -m fastwi.convert`: checkpoints to ordinary state dicts and back, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_networks import trained

from fastwi.convert import main
from fastwi.experiment.store.states import write_states
from fastwi.models.registry import build_model
from fastwi.population import Population

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, classes)

    def forward(self, x):
        return self.linear(self.norm(x).mean((2, 3)))
"""


def networks(seed: int, count: int) -> list[torch.nn.Module]:
    return [trained(build_model("resnet20", 10, 0.25), seed + m) for m in range(count)]


def refused(capsys, *argv: str) -> str:
    try:
        code = main([str(word) for word in argv])
    except SystemExit as ended:  # argparse's way
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    return said.err.splitlines()[-1]


def equal(found: Population, expected: Population) -> bool:
    matrices = ("weights_MP", "momentum_MP", "statistics_MQ", "counters_MB")
    same = [torch.equal(getattr(found, name), getattr(expected, name)) for name in matrices]
    return found.layout == expected.layout and all(same)


def run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_export(seed, tmp_path, capsys, ending):
    members = networks(seed, 3)
    population = Population.from_modules(members)
    population.save(tmp_path / "p.safetensors")
    for m, network in enumerate(members):
        out = tmp_path / f"x.{ending}"
        run("export", tmp_path / "p.safetensors", "--member", m, "--out", out)
        assert capsys.readouterr().out == f"{out}: member {m} of {tmp_path / 'p.safetensors'}\n"
        state = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
        fresh = build_model("resnet20", 10, 0.25)
        fresh.load_state_dict(state)
        assert all(torch.equal(fresh.state_dict()[key], value) for key, value in network.state_dict().items())


def test_export_of_a_stores_state(seed, tmp_path):
    (network,) = networks(seed, 1)
    write_states(tmp_path, [("a" * 32, Population.from_modules([network]))])
    (path,) = tmp_path.rglob("*.safetensors")
    run("export", path, "--out", tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_momentum_goes_there_and_back(seed, tmp_path, ending):
    population = Population.from_modules(networks(seed, 2))
    generator = torch.Generator().manual_seed(seed)
    for m in range(2):
        for tensor in population.momentum(m).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    population.save(tmp_path / "p.safetensors")
    files = []
    for m in range(2):
        files.append(tmp_path / f"{m}.{ending}")
        run("export", tmp_path / "p.safetensors", "--member", m, "--optimizer", "--out", files[-1])
    model = ("--model", "resnet20", "--classes", 10, "--width", 0.25)
    run("import", *files, "--out", tmp_path / "again.safetensors", *model)
    assert equal(Population.load(tmp_path / "again.safetensors"), population)


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


def test_import(seed, tmp_path, capsys):
    """Files of all kinds become the members, in order, and what was taken off is said."""
    members = networks(seed, 3)
    torch.save(members[0].state_dict(), tmp_path / "0.pt")
    torch.save({"epoch": 3, "model": torch.nn.DataParallel(members[1]).state_dict()}, tmp_path / "1.pth")
    Population.from_modules([members[2]]).save(tmp_path / "2.safetensors")
    files = sorted(tmp_path.iterdir())
    out = tmp_path / "p.safetensors"
    run("import", *files, "--out", out, "--model", "resnet20", "--classes", 10, "--width", 0.25, "--json")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"file": str(out), "members": 3}
    assert said.err.splitlines() == [
        f"fastwi: {files[1]}: read from 'model'; left out: epoch",
        f"fastwi: {files[1]}: prefix 'module.' removed",
    ]
    expected = Population.from_modules(members)
    assert equal(Population.load(out), expected)


def test_import_of_ones_own_network(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(OWN)
    torch.save({"linear.weight": torch.zeros(7, 3)}, "bad.pt")
    argv = ["import", "bad.pt", "--out", "p.safetensors", "--model", "net.py:Net", "--classes", "7"]
    assert "bad.pt: the state dict lacks 'norm.weight' of shape (3,)" in refused(capsys, *argv)
    assert not Path("p.safetensors").exists()
    network = build_model("net.py:Net", 7)
    torch.save(network.state_dict(), "good.pt")
    run("import", "good.pt", *argv[2:])
    assert torch.equal(Population.load("p.safetensors").state_dict(0)["linear.weight"], network.linear.weight)


def test_import_of_a_network_that_is_built_for_a_size(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def net(classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], classes))\n"
    )
    torch.save(build_model("net.py:net", 7, image_size=(8, 8)).state_dict(), "a.pt")
    argv = ["import", "a.pt", "--out", "p.safetensors", "--model", "net.py:net", "--classes", "7"]
    assert "missing a required argument: 'image_size'" in refused(capsys, *argv)
    assert "--image-size: 0; give at least 1" in refused(capsys, *argv, "--image-size", "0")
    run(*argv, "--image-size", "8")
    assert Population.load("p.safetensors").layout.P >= 3 * 8 * 8 * 7


def test_refusals(seed, tmp_path, capsys):
    members = networks(seed, 2)
    several, state, out = tmp_path / "p.safetensors", tmp_path / "s.pt", tmp_path / "out.pt"
    Population.from_modules(members).save(several)
    torch.save(members[0].state_dict(), state)
    torch.save(members[0], tmp_path / "module.pt")
    model = ("--model", "resnet20", "--classes", "10")
    into = ("--out", tmp_path / "out.safetensors")
    for argv, expected in [
        (("export", several, "--out", out), "holds 2 members"),
        (("export", several, "--member", 2, "--out", out), "no member 2; it has members 0 to 1"),
        (("export", several, "--member", -1, "--out", out), "--member: -1 is not a member"),
        (("export", several, "--member", 0, "--out", tmp_path / "out.npz"), "neither .safetensors nor .pt"),
        (("export", state, "--out", out), "not a safetensors file"),
        (("export", tmp_path / "none", "--out", out), "no such file"),
        (("export", several), "required: --out"),
        (("import", state, *into, *model), "'conv.weight' is torch.float32 (4, 3, 3, 3) in the state dict"),
        (("import", state, *into, "--model", "resnet2", "--classes", "10"), "--model: 'resnet2' is no known model"),
        (("import", state, *into, "--model", "resnet20", "--classes", "0"), "--classes: 0"),
        (("import", state, "--out", out, *model), "does not end in .safetensors"),
        (("import", tmp_path / "module.pt", *into, *model), "save network.state_dict() instead"),
        (("import", *into, *model), "required: FILE"),
        (("swap",), "invalid choice: 'swap'"),
    ]:
        assert expected in refused(capsys, *argv)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module.pt", "p.safetensors", "s.pt"]


def test_help_without_torch():
    code = (
        "import sys; from fastwi.__main__ import main\n"
        "try: main(['convert', 'import', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "weights_only" in ended.stdout
