"""Networks of the user's own, from a package or a file, and every way of getting them wrong."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastwi.config.check import check_config
from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config, ModelConfig
from fastwi.config.write import config_hash
from fastwi.data.resident import load_split
from fastwi.engine.choose import build_network
from fastwi.errors import ConfigError
from fastwi.models.own import build_own
from fastwi.models.registry import build_model
from fastwi.models.source import source_digest
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
    (root / "lacking.py").write_text("import surely_not_installed\n")
    (root / "raising.py").write_text("x = 1\nx.y\n")
    (root / "leaving.py").write_text("import sys\nsys.exit('usage: ...')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield root
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["own_networks.nets", "own_networks/nets.py", "./own_networks/nets.py", "absolute"])
@pytest.mark.parametrize(
    "attribute", ["Net.small", "by_classes", "by_num_classes", "by_options", "both", "Counting", "Fixed"]
)
def test_the_number_of_classes_is_given(package, place, attribute):
    place = str(package / "nets.py") if place == "absolute" else place
    name = f"{place}:{attribute}"
    check_config(Config(model=ModelConfig(name=name)))
    network = build_model(name, 7, image_size=(16, 16))
    assert isinstance(network, nn.Module)
    assert network(torch.randn(5, 3, 16, 16)).shape == (5, 7)
    assert build_model(name, 7)(torch.randn(5, 3, 16, 16)).shape == (5, 7)
    Layout.of(network)


def test_a_callable_without_classes_is_called_without(package):
    assert build_model("own_networks.nets:of_ten", 10)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_the_size_of_the_images_is_given_where_it_is_asked_for(package, digits_directory):
    name = "own_networks.nets:of_size"
    assert build_model(name, 7, image_size=(12, 20))[1].in_features == 3 * 12 * 20
    config = config_from_mapping({"model": {"name": name}})
    train = load_split(digits_directory, "train", torch.device("cpu"))[0]
    assert build_network(config, train.classes, train.image_shape[:2])[1].in_features == 3 * 16 * 16
    with pytest.raises(
        ConfigError, match="missing a required argument: 'image_size'; only classes or num_classes is given"
    ):
        build_model(name, 7)


def test_a_factory_of_torchvision():
    network = build_model("torchvision.models:resnet18", 4)
    assert network.fc.out_features == 4


def test_a_trial_leaves_no_trace(package):
    """It draws nothing and changes no buffer: weights are those of the bare class from the same seed."""
    torch.manual_seed(5)
    network = build_model("own_networks.nets:Counting", 3)
    after = torch.randn(3)
    assert network.training
    assert network.calls == 0
    torch.manual_seed(5)
    plain = sys.modules["own_networks.nets"].Counting(3)
    assert torch.equal(after, torch.randn(3))
    for (name, value), other in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("place", ["own_networks.nets", "own_networks/nets.py"])
def test_weights_follow_from_the_seed_alone(package, place):
    """Also the first time, when importing the module seeds and draws from torch's generator."""
    configs = [config_from_mapping({"model": {"name": f"{place}:Counting"}, "seeds": {"init": i}}) for i in (0, 1)]
    drawn = [build_network(config, 5).net.conv.weight for config in (configs[0], configs[0], configs[1])]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_file_is_read_anew(package):
    path = package / "mine.py"
    path.write_text("from own_networks.nets import Net\ndef net(classes): return Net(classes)\n")
    assert isinstance(build_model(f"{path}:net", 3).linear, nn.Linear)
    path.write_text(
        "from torch import nn\ndef net(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
    )
    assert isinstance(build_model(f"{path}:net", 3), nn.Sequential)


NETS_PUBLIC = (
    "Counting, Fixed, Net, both, broken, by_classes, by_num_classes, by_options, ..."  # the first eight, sorted
)
SHAPE = "; return logits of shape (2, 7), and take the number of classes as classes or num_classes"
REFUSALS = [
    ("own_network.nets:Net", "there is no module own_network; did you mean own_networks?"),
    ("qzxqzx.nets:Net", "there is no module qzxqzx; install it, add its directory to PYTHONPATH, or name its file"),
    ("own_networks.net:Net", "there is no module own_networks.net; did you mean own_networks.nets?"),
    ("own_networks.qqq:Net", "there is no module own_networks.qqq; it has lacking, leaving, nets, raising"),
    ("own_networks.nets.deep:Net", "there is no module own_networks.nets.deep"),
    ("own_networks.nets:net", "has no attribute net; did you mean Net?"),
    ("own_networks.nets:by_class", "has no attribute by_class; did you mean by_classes?"),
    ("own_networks.nets:Zzz", f"has no attribute Zzz; it has {NETS_PUBLIC}"),
    ("own_networks.nets:Net.smal", "Net has no attribute smal; did you mean small?"),
    ("own_networks.nets:number", "is of type int; name a function or class that builds the network"),
    ("own_networks.nets:instance", "is a network already; name the class or a function that builds it"),
    ("own_networks.nets:nothing", "returns None, no torch.nn.Module; return the network"),
    ("own_networks.nets:number_of", "returns a value of type int, no torch.nn.Module; return the network"),
    (
        "own_networks.nets:two",
        "missing a required argument: 'depth'; only classes or num_classes is given: give the rest defaults",
    ),
    ("own_networks.nets:broken", "building it failed: RuntimeError: out of luck (nets.py line 47)"),
    ("own_networks.nets:of_ten", "gives shape (2, 10) for 2 images of 32 x 32 pixels and 7 classes" + SHAPE),
    (
        "own_networks.nets:tuple_of",
        "gives a value of type tuple for 2 images of 32 x 32 pixels and 7 classes" + SHAPE,
    ),
    (
        "own_networks.lacking:net",
        "importing it failed: ModuleNotFoundError: No module named 'surely_not_installed' (lacking.py line 1)",
    ),
    (
        "own_networks.raising:net",
        "importing it failed: AttributeError: 'int' object has no attribute 'y' (raising.py line 2)",
    ),
    ("own_networks.leaving:net", "importing it failed: SystemExit: usage: ... (leaving.py line 2)"),
    (
        "own_networks/raising.py:net",
        "importing it failed: AttributeError: 'int' object has no attribute 'y' (raising.py line 2)",
    ),
    ("own_networks/net.py:Net", "there is no file own_networks/net.py; did you mean nets.py?"),
    ("nowhere/net.py:Net", "there is no file nowhere/net.py"),
    ("own_networks/nets.py:net", "has no attribute net; did you mean Net?"),
]


@pytest.mark.parametrize(("name", "message"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_refusals(package, name, message):
    check_config(Config(model=ModelConfig(name=name)))  # the text is right; what it means is found out here
    with pytest.raises(ConfigError) as caught:
        build_model(name, 7)
    assert str(caught.value) == f"model.name: {name!r}: {message}"


def test_a_size_that_it_cannot_take(package):
    """Where the size is known, it alone is tried; 32 x 32 images make rows of another number here."""
    with pytest.raises(ConfigError) as caught:
        build_model("own_networks.nets:Fixed", 7, image_size=(17, 17))
    assert re.search(
        r"Fixed': fails on images of 17 x 17 pixels \(take image_size to build it for them\): RuntimeError: .*"
        r"\(nets.py line 35\)$",
        str(caught.value),
    )
    with pytest.raises(ConfigError, match=r"gives shape \(8, 7\) for 2 images of 32 x 32 pixels and 7 classes"):
        build_model("own_networks.nets:Fixed", 7, image_size=(32, 32))
    assert "\n" not in str(caught.value)


BAD_FORMS = ["a:", ":b", "a b:c", "a-b:c", "a:b-c", ".a:b", "a.:b", "a/b:c", ".py:c", "a.py:", "a:1", "a:b c", "a::b"]


@pytest.mark.parametrize("name", BAD_FORMS)
def test_forms(name):
    for refuse in (lambda: check_config(Config(model=ModelConfig(name=name))), lambda: build_model(name, 10)):
        with pytest.raises(ConfigError) as caught:
            refuse()
        form = "package.module:attribute or path/to/file.py:attribute"
        assert str(caught.value) == f"model.name: {name!r} is not of the form {form}; write it so"
    with pytest.raises(ConfigError, match="is not package"):
        build_own(name, 10)


def test_a_width_is_for_the_registrys_networks():
    message = "model.width: 0.5 for 'a.b:c', which has no width; leave it out, or build it in there"
    with pytest.raises(ConfigError) as caught:
        config_from_mapping({"model": {"name": "a.b:c", "width": 0.5}})
    assert str(caught.value) == message
    assert config_from_mapping({"model": {"name": "a.b:c", "width": 1}}).model.name == "a.b:c"


def test_the_width_of_the_configuration_is_built():
    config = config_from_mapping({"model": {"name": "convnet", "width": 2}})
    assert build_network(config, 3).linear.in_features == 256
    with pytest.raises(ConfigError, match=r"model\.width: 0\.01 is not valid; give a number, from 0\.0625 to 64"):
        config_from_mapping({"model": {"width": 0.01}})


def test_a_width_of_one_adds_nothing_to_the_hash():
    """Every configuration from before there were widths keeps its hash."""
    assert config_hash(config_from_mapping({"model": {"width": 1.0}})) == config_hash(Config()) == "ede0de807492"
    assert config_hash(config_from_mapping({"model": {"width": 2}})) != config_hash(Config())


def test_source_digest_follows_the_file(tmp_path, monkeypatch):
    """A run or sweep must not go on with networks that an earlier version of the user's code trained."""
    path = tmp_path / "mine_digest.py"
    path.write_text("def net(): pass\n")
    first = source_digest(f"{path}:net")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source_digest("mine_digest:net") not in (first, "")
    path.write_text("def net(): return 1\n")
    assert source_digest(f"{path}:net") not in (first, "")
    assert source_digest("resnet20") == source_digest(f"{tmp_path}/none.py:net") == source_digest("no_such:net") == ""


UNTRAINABLE = {
    "Bare": "has no parameters to train",
    "Lazy": "has lazy layers, whose sizes are not known before they run; give the sizes",
    "Frozen": "parameter more.bias asks for no gradient, and all are trained; make it a buffer",
    "Two": "gives a value of type tuple in training mode; return the logits alone",
    "Failing": "fails when it is trained: RuntimeError: not today (untrainable.py line 32)",
    "Unused": "parameter more.weight has no part in the logits; remove it",
    "Assigning": "assigns its buffer seen anew; change it in place (mul_, add_, copy_)",
}
UNTRAINABLE_NETS = """
import torch
from torch import nn
class Good(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.more = nn.Linear(3, classes)
        self.register_buffer("seen", torch.zeros(3))
    def forward(self, x):
        return self.more(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training) + 0 * self.seen)
class Bare(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes
    def forward(self, x):
        return x.mean((1, 2, 3))[:, None].expand(-1, self.classes)
class Lazy(Good):
    def __init__(self, classes):
        super().__init__(classes)
        self.more = nn.LazyLinear(classes)
class Frozen(Good):
    def __init__(self, classes):
        super().__init__(classes)
        self.more.bias.requires_grad_(False)
class Two(Good):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits
class Failing(Good):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not today")
        return super().forward(x)
class Unused(Good):
    def forward(self, x):
        return x.mean((2, 3))[:, :1] * self.more.bias
class Assigning(Good):
    def forward(self, x):
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.mean((0, 2, 3)) + torch.rand(3)
        return super().forward(x)
class InPlace(Good):
    def forward(self, x):
        if self.training:
            self.seen.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)) + torch.rand(3))
        return super().forward(x)
"""


@pytest.mark.parametrize("image_size", [None, (12, 20)])
def test_what_cannot_be_trained_is_refused(tmp_path, image_size):
    path = tmp_path / "untrainable.py"
    path.write_text(UNTRAINABLE_NETS)
    for attribute, message in UNTRAINABLE.items():
        if (attribute, image_size) == ("Failing", None):
            continue  # it may be made for a size that is not tried
        with pytest.raises(ConfigError) as caught:
            build_model(f"{path}:{attribute}", 4, image_size=image_size)
        assert str(caught.value).endswith(message), attribute
    for attribute in ("Good", "InPlace"):
        state = torch.get_rng_state()
        network = build_model(f"{path}:{attribute}", 4, image_size=image_size)
        assert network.training
        assert not network.seen.any()
        torch.set_rng_state(state)
        drawn = getattr(sys.modules[type(network).__module__], attribute)(4).more.weight
        assert torch.equal(network.more.weight, drawn)  # the trial drew nothing
