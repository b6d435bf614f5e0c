"""Networks of the user's own, from a package or a file, and every way of getting them wrong."""

import sys
from pathlib import Path

import pytest
import torch
from mappings import config_from_mapping
from torch import nn

from fastwi.config.write import config_hash
from fastwi.engine.choose import build_network
from fastwi.errors import ConfigError
from fastwi.models.names import model_problem
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

class Counting(Net):
    "Counts its calls, also in evaluation, and draws numbers."
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    def forward(self, x):
        self.calls += 1
        return super().forward(x) + 0 * torch.randn(1)

def by_classes(classes): return Net(classes)
def by_num_classes(width=1, *, num_classes): return Net(num_classes)
def by_options(**options): return Net(options["num_classes"])
def of_ten(): return Net(10)
def both(classes, num_classes=None): return Net(classes if num_classes is None else 1)
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
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size[0] * image_size[1], classes))
def fixed(classes): return of_size(classes, (16, 16))
"""
SIZE = (16, 16)


@pytest.fixture(autouse=True)
def package(write) -> None:
    """The package h1_own, and a file with a dot in its name."""
    write({
        "h1_own/__init__.py": "", "h1_own/nets.py": NETS, "h1_own/nets.v2.py": NETS, "h1_own/folder.py/x": "",
        "h1_own/lacking.py": "import surely_not_installed\n", "h1_own/raising.py": "x = 1\nx.y\n",
        "h1_own/leaving.py": "import sys\nsys.exit('usage: ...')\n",
    })  # fmt: skip


@pytest.mark.parametrize("place", ["h1_own.nets", "h1_own/nets.v2.py", "./h1_own/nets.py", "absolute"])
@pytest.mark.parametrize(
    "attribute", ["Net.small", "by_classes", "by_num_classes", "by_options", "both", "Counting", "fixed"]
)
def test_the_number_of_classes_is_given(place, attribute):
    place = str(Path("h1_own/nets.py").resolve()) if place == "absolute" else place
    name = f"{place}:{attribute}"
    assert model_problem(name) is None
    for network in (build_model(name, 7, image_size=SIZE), build_model(name, 7)):
        assert isinstance(network, nn.Module)
        assert network.training
        assert network(torch.randn(5, 3, 16, 16)).shape == (5, 7)
        Layout.of(network)


def test_what_a_callable_does_not_take_is_not_given():
    assert build_model("h1_own.nets:of_ten", 10, image_size=SIZE)(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert build_model("torchvision.models:resnet18", 4).fc.out_features == 4
    config = config_from_mapping({"model": {"name": "h1_own.nets:of_size"}})
    assert build_network(config, 7, (12, 20))[1].in_features == 3 * 12 * 20
    with pytest.raises(ConfigError, match="missing a required argument: 'image_size'; give image_size"):
        build_network(config, 7)


@pytest.mark.parametrize("place", ["h1_own.nets", "h1_own/nets.py"])
def test_weights_follow_from_the_seed_alone(place):
    """As of the bare class, also the first time, when importing the module seeds and draws."""
    torch.manual_seed(5)
    network = build_model(f"{place}:Counting", 3, image_size=SIZE)
    after = torch.randn(3)
    assert network.calls == 0
    torch.manual_seed(5)
    plain = sys.modules[type(network).__module__].Counting(3)
    assert torch.equal(after, torch.randn(3))
    for (name, value), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    configs = [config_from_mapping({"model": {"name": f"{place}:Counting"}, "seeds": {"init": i}}) for i in (0, 1)]
    drawn = [build_network(config, 5).conv.weight for config in (configs[0], configs[0], configs[1])]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


REFUSALS = [
    ("h1_wrong.nets:Net", "no module h1_wrong; install it, add its directory to PYTHONPATH, or name its file"),
    ("h1_own.net:Net", "no module h1_own.net"),
    ("h1_own.nets.deep:Net", "no module h1_own.nets.deep"),
    ("h1_own.nets:net", "no attribute net; did you mean Net?"),
    ("h1_own.nets:Zzz", "no attribute Zzz"),
    ("h1_own.nets:Net.smal", "Net has no attribute smal; did you mean small?"),
    ("h1_own.nets:number", "of type int"),
    ("h1_own.nets:instance", "is a network already"),
    ("h1_own.nets:nothing", "returns None"),
    ("h1_own.nets:number_of", "returns a value of type int"),
    (
        "h1_own.nets:two",
        "missing a required argument: 'depth'; only classes or num_classes, and image_size, are given",
    ),
    ("h1_own.nets:broken", "RuntimeError: out of luck (nets.py line 38)"),
    ("h1_own.nets:of_ten", "shape (2, 10) for 2 images of 32 x 32 pixels and 7 classes"),
    ("h1_own.nets:tuple_of", "a value of type tuple for 2 images of 32 x 32 pixels and 7 classes"),
    ("h1_own.nets:fixed", "fails on images of 32 x 32 pixels (take image_size to build it for them): RuntimeError"),
    ("h1_own.lacking:net", "ModuleNotFoundError: No module named 'surely_not_installed' (lacking.py line 1)"),
    ("h1_own.raising:net", "AttributeError: 'int' object has no attribute 'y' (raising.py line 2)"),
    ("h1_own.leaving:net", "SystemExit: usage: ... (leaving.py line 2)"),
    ("h1_own/raising.py:net", "AttributeError: 'int' object has no attribute 'y' (raising.py line 2)"),
    ("nowhere/net.py:Net", "no file nowhere/net.py"),
    ("~nobody_of_this_name/net.py:Net", "no file ~nobody_of_this_name/net.py"),
    ("h1_own/folder.py:Net", "no file h1_own/folder.py"),
    ("h1_own/nets.py:net", "no attribute net; did you mean Net?"),
]


@pytest.mark.parametrize(("name", "message"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_refusals(name, message):
    assert model_problem(name) is None  # the text is right; what it means is found out here
    with pytest.raises(ConfigError) as caught:
        build_model(name, 7, image_size=(32, 32))
    (line,) = str(caught.value).splitlines()
    assert repr(name) in line
    assert message in line


BAD_FORMS = ["a:", ":b", "a b:c", "a-b:c", "a:b-c", ".a:b", "a.:b", "a/b:c", ".py:c", "a.py:", "a:1", "a:b c", "a::b"]


@pytest.mark.parametrize("name", BAD_FORMS)
def test_forms(name):
    with pytest.raises(ConfigError) as caught:
        build_own(name, 10)
    for said in (model_problem(name), str(caught.value)):
        assert "package.module:attribute or path/to/file.py:attribute" in said
        assert repr(name) in said


def test_two_networks_of_one_file_have_names_of_their_own():
    """Beside the digest of their source, which is the same for both. Where the file lies is in no name."""

    def named(model: str) -> str:
        return config_hash(config_from_mapping({"model": {"name": model}}), "a digest")

    assert named("nets.py:One") == named("elsewhere/nets.py:One")
    assert (
        len({named(model) for model in ("nets.py:One", "nets.py:Two", "other.py:One", "nets:One", "nets:Two")}) == 5
    )
