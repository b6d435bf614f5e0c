"""Networks of the user's own, from a package or a file, and every way of getting them wrong."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastwi.config.read import config_from_mapping, read_config
from fastwi.config.schema import Config, ModelConfig
from fastwi.config.write import config_hash
from fastwi.data.resident import load_split
from fastwi.engine.choose import build_network
from fastwi.errors import ConfigError
from fastwi.models.own import build_own
from fastwi.models.registry import build_model
from fastwi.population import Layout

NETS = """
import torch
from torch import nn

torch.manual_seed(1234)  # many a script does so; the draws of a run are not to be touched by it
torch.randn(7)
number = 3

class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, outputs)
    def forward(self, x):
        return self.linear(self.conv(x).relu().mean((2, 3)))
    @classmethod
    def small(cls, *, classes=3):
        return cls(classes)

class Counting(nn.Module):
    "Counts its calls, also in evaluation, and draws numbers."
    def __init__(self, num_classes):
        super().__init__()
        self.net = Net(num_classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    def forward(self, x):
        self.calls += 1
        return self.net(x) + 0 * torch.randn(1)

class Fixed(nn.Module):
    "Takes images of 16 x 16 alone."
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, classes)
    def forward(self, x):
        return self.linear(x.view(-1, 3 * 16 * 16))

def by_classes(classes): return Net(classes)
def by_num_classes(width=1, *, num_classes): return Net(num_classes)
def by_options(**options): return Net(options["num_classes"])
def of_ten(): return Net(10)
def both(classes, num_classes=None): return Net(classes)
instance = Net(10)
def nothing(): pass
def number_of(classes): return classes
def two(classes, depth): return Net(classes)
def broken(classes):
    raise RuntimeError("out of\\nluck")
def tuple_of(classes):
    class Pair(Net):
        def forward(self, x): return super().forward(x), x
    return Pair(classes)
def of_size(classes, image_size):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, classes))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the path with the package own_networks; forgotten after the test."""
    root = tmp_path / "own_networks"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "nets.py").write_text(NETS)
    (root / "nets.v2.py").write_text(NETS)
    (root / "lacking.py").write_text("import surely_not_installed\n")
    (root / "raising.py").write_text("x = 1\nx.y\n")
    (root / "leaving.py").write_text("import sys\nsys.exit('usage: ...')\n")
    (root / "folder.py").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield root
    for name in set(sys.modules) - before:
        if name.startswith(("own_networks", "fastwi_own_")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "place", ["own_networks.nets", "own_networks/nets.v2.py", "./own_networks/nets.py", "absolute"]
)
@pytest.mark.parametrize(
    "attribute", ["Net.small", "by_classes", "by_num_classes", "by_options", "both", "Counting", "Fixed"]
)
def test_the_number_of_classes_is_given(package, place, attribute):
    place = str(package / "nets.py") if place == "absolute" else place
    name = f"{place}:{attribute}"
    read_config(Config(model=ModelConfig(name=name)), {})
    for network in (build_model(name, 7, image_size=(16, 16)), build_model(name, 7)):
        assert isinstance(network, nn.Module)
        assert network.training
        assert network(torch.randn(5, 3, 16, 16)).shape == (5, 7)
        Layout.of(network)


def test_a_callable_without_classes_is_called_without(package):
    assert build_model("own_networks.nets:of_ten", 10)(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert build_model("torchvision.models:resnet18", 4).fc.out_features == 4


def test_the_size_of_the_images_is_given_where_it_is_asked_for(package, digits_directory):
    name = "own_networks.nets:of_size"
    assert build_model(name, 7, image_size=(12, 20))[1].in_features == 3 * 12 * 20
    config = config_from_mapping({"model": {"name": name}})
    train = load_split(digits_directory, "train", torch.device("cpu"))[0]
    assert build_network(config, train.classes, train.image_shape[:2])[1].in_features == 3 * 16 * 16


@pytest.mark.parametrize("place", ["own_networks.nets", "own_networks/nets.py"])
def test_weights_follow_from_the_seed_alone(package, place):
    """As of the bare class, also the first time, when importing the module seeds and draws."""
    torch.manual_seed(5)
    network = build_model(f"{place}:Counting", 3)
    after = torch.randn(3)
    assert network.calls == 0
    torch.manual_seed(5)
    plain = sys.modules[type(network).__module__].Counting(3)
    assert torch.equal(after, torch.randn(3))
    for (name, value), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    configs = [config_from_mapping({"model": {"name": f"{place}:Counting"}, "seeds": {"init": i}}) for i in (0, 1)]
    drawn = [build_network(config, 5).net.conv.weight for config in (configs[0], configs[0], configs[1])]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


REFUSALS = [
    ("own_network.nets:Net", "no module own_network; did you mean own_networks?"),
    ("qzxqzx.nets:Net", "no module qzxqzx; install it, add its directory to PYTHONPATH, or name its file"),
    ("own_networks.net:Net", "no module own_networks.net; did you mean own_networks.nets?"),
    ("own_networks.nets.deep:Net", "no module own_networks.nets.deep"),
    ("own_networks.nets:net", "no attribute net; did you mean Net?"),
    ("own_networks.nets:Zzz", "no attribute Zzz"),
    ("own_networks.nets:Net.smal", "Net has no attribute smal; did you mean small?"),
    ("own_networks.nets:number", "of type int"),
    ("own_networks.nets:instance", "is a network already"),
    ("own_networks.nets:nothing", "returns None"),
    ("own_networks.nets:number_of", "returns a value of type int"),
    ("own_networks.nets:two", "missing a required argument: 'depth'; only classes or num_classes is given"),
    ("own_networks.nets:of_size", "missing a required argument: 'image_size'; only classes or num_classes is given"),
    ("own_networks.nets:broken", "RuntimeError: out of luck (nets.py line 47)"),
    ("own_networks.nets:of_ten", "shape (2, 10) for 2 images of 32 x 32 pixels and 7 classes"),
    ("own_networks.nets:tuple_of", "a value of type tuple for 2 images of 32 x 32 pixels and 7 classes"),
    ("own_networks.lacking:net", "ModuleNotFoundError: No module named 'surely_not_installed' (lacking.py line 1)"),
    ("own_networks.raising:net", "AttributeError: 'int' object has no attribute 'y' (raising.py line 2)"),
    ("own_networks.leaving:net", "SystemExit: usage: ... (leaving.py line 2)"),
    ("own_networks/raising.py:net", "AttributeError: 'int' object has no attribute 'y' (raising.py line 2)"),
    ("own_networks/net.py:Net", "no file own_networks/net.py; did you mean nets.py?"),
    ("nowhere/net.py:Net", "no file nowhere/net.py"),
    ("own_networks/folder.py:Net", "no file own_networks/folder.py"),
    ("own_networks/nets.py:net", "no attribute net; did you mean Net?"),
]


@pytest.mark.parametrize(("name", "message"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_refusals(package, name, message):
    read_config(Config(model=ModelConfig(name=name)), {})  # the text is right; what it means is found out here
    with pytest.raises(ConfigError) as caught:
        build_model(name, 7)
    (line,) = str(caught.value).splitlines()
    assert repr(name) in line
    assert message in line


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (17, r"fails on images of 17 x 17 pixels .*\(nets.py line 35\)$"),
        (32, r"shape \(8, 7\) for 2 images of 32 x 32"),
    ],
)
def test_a_size_that_it_cannot_take(package, size, message):
    """Where the size is known, it alone is tried; 32 x 32 images make rows of another number here."""
    with pytest.raises(ConfigError, match=message) as caught:
        build_model("own_networks.nets:Fixed", 7, image_size=(size, size))
    assert "\n" not in str(caught.value)


BAD_FORMS = ["a:", ":b", "a b:c", "a-b:c", "a:b-c", ".a:b", "a.:b", "a/b:c", ".py:c", "a.py:", "a:1", "a:b c", "a::b"]


@pytest.mark.parametrize("name", BAD_FORMS)
def test_forms(name):
    for refuse in (
        lambda: read_config(Config(model=ModelConfig(name=name)), {}), lambda: build_model(name, 10),
        lambda: build_own(name, 10),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"package\.module:attribute or path/to/file\.py:attribute") as caught:
            refuse()
        assert repr(name) in str(caught.value)


def test_widths():
    """A width of one adds nothing to the hash: every configuration from before there were widths keeps its own."""
    with pytest.raises(ConfigError, match=r"model\.width: 0\.5 for 'a\.b:c'"):
        config_from_mapping({"model": {"name": "a.b:c", "width": 0.5}})
    config = config_from_mapping({"model": {"name": "convnet", "width": 2}})
    assert build_network(config, 3).linear.in_features == 256
    assert config_hash(config_from_mapping({"model": {"width": 1.0}})) == config_hash(Config()) == "ede0de807492"
    assert config_hash(config_from_mapping({"model": {"width": 2}})) != config_hash(Config())
