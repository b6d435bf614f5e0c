"""What a network of the user's own draws from is seeded; what differs each time, or is no logits, is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from fastwi.errors import ConfigError
from fastwi.models.generators import draws_of, seeded
from fastwi.models.registry import build_model

NETS = """
import random, sys, time, os
from operator import attrgetter
import numpy as np
import torch
from torch import nn

AT_IMPORT = np.random.standard_normal() + random.random() + float(torch.randn(()))
OF_ITS_OWN = np.random.default_rng()
ONCE = OF_ITS_OWN.standard_normal()

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3, classes)
        self.register_buffer("seen", torch.zeros(3))
        self.start()
    def start(self):
        pass
    def noise(self, x):
        return 0
    def outputs(self, y):
        return y
    def forward(self, x):
        return self.outputs(self.linear(x.mean((2, 3))) + self.noise(x))

def changed(**methods):
    return type("Changed", (Net,), methods)

def starting(value):
    return changed(start=lambda self: nn.init.constant_(self.linear.weight, value()))
Numpy = starting(np.random.standard_normal)
Random = starting(random.random)
Imported = starting(lambda: AT_IMPORT)
OwnGenerator = starting(lambda: OF_ITS_OWN.standard_normal())
OwnAtImport = starting(lambda: ONCE)
Clock = starting(lambda: time.time_ns() % 1_000_000)
System = starting(lambda: os.urandom(1)[0] + os.urandom(1)[0] / 256)
Pretrained = starting(lambda: 0.5)

def seeding(seed):
    return changed(start=lambda self: (seed(5), self.linear.reset_parameters()))
SeedsTorch, SeedsNumpy, SeedsRandom = map(seeding, (torch.manual_seed, np.random.seed, random.seed))

def noisy(value):
    return changed(noise=lambda self, x: value() if self.training else 0)
NumpyForward = noisy(np.random.standard_normal)
RandomForward = noisy(random.random)
TorchForward = noisy(lambda: torch.randn(()))
OwnForward = noisy(lambda: OF_ITS_OWN.standard_normal())
Evaluating = changed(noise=lambda self, x: 0 if self.training else random.random())
ClockEvaluating = changed(noise=lambda self, x: time.time_ns() % 10_000_000)
Attribute = changed(
    start=lambda self: setattr(self, "order", OF_ITS_OWN.standard_normal()), noise=lambda self, x: self.order)

class Dtype(Net):
    "Another dtype each time, whatever is executed again."
    def start(self):
        sys.h1_built = getattr(sys, "h1_built", 0) + 1
        self.register_buffer("kind", torch.zeros(2, dtype=(torch.float32, torch.float64)[sys.h1_built % 2]))

Softmax = changed(outputs=lambda self, y: y.softmax(1))
SoftmaxTested = changed(outputs=lambda self, y: y if self.training else y.softmax(1))
SoftmaxTrained = changed(outputs=lambda self, y: y.softmax(1) if self.training else y)
Sigmoid = changed(outputs=lambda self, y: y.sigmoid())
LogSoftmax = changed(outputs=lambda self, y: y.log_softmax(1))
Tanh = changed(outputs=lambda self, y: y.tanh())
Rectified = changed(outputs=lambda self, y: y.relu())
def constant(bias):
    return changed(start=lambda self: (nn.init.zeros_(self.linear.weight), nn.init.constant_(self.linear.bias, bias)))
Zero, Tenths = constant(0), constant(0.1)  # of 10 classes, as if they were probabilities

Bare = changed(start=lambda self: setattr(self, "linear", nn.Flatten()))
Lazy = changed(start=lambda self: setattr(self, "linear", nn.LazyLinear(4)))
Frozen = changed(start=lambda self: self.linear.bias.requires_grad_(False))
Two = changed(outputs=lambda self, y: (y, y) if self.training else y)
Failing = changed(outputs=lambda self, y: y.of_training if self.training else y)
Unused = changed(forward=lambda self, x: x.mean((2, 3))[:, :1] * self.linear.bias)

class Assigning(Net):
    def noise(self, x):
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.mean((0, 2, 3)) + torch.rand(3)
        return 0

class Remembering(Net):
    "Adds 0 in the first call in each mode. Each call in training adds 1 to that."
    def start(self):
        self.mean = torch.zeros(())
    def noise(self, x):
        found = self.mean.clone()
        if self.training:
            self.mean.add_(1)
        return found
RemembersTested = changed(
    start=Remembering.start, noise=lambda self, x: (Remembering.noise(self, x), 0)[1] if self.training else self.mean)
RemembersImages = changed(
    start=lambda self: setattr(self, "last", torch.zeros(3)),
    noise=lambda self, x: (setattr(self, "last", x.mean((0, 2, 3))), 0)[1] if self.training else self.last.sum())
GeneratorOfEach = changed(
    start=lambda self: setattr(self, "draws", torch.Generator().manual_seed(0)),
    noise=lambda self, x: torch.randn((), generator=self.draws) if self.training else 0)
class StartsFromData(Net):
    def start(self):
        self.ready, self.place = False, nn.Parameter(torch.zeros(()))
    def noise(self, x):
        if self.training and not self.ready:
            with torch.no_grad():
                self.place.copy_(1 + x.mean())
            self.ready = True
        return self.place
class CachesWeights(Net):
    "In evaluation, until it is trained again, as timm's LeViT does."
    def train(self, mode=True):
        self.cache = None
        return super().train(mode)
    def noise(self, x):
        if self.training or self.cache is None:
            self.cache = self.linear.bias.square()
        return self.cache
class Cached(Net):
    "The same for each call."
    cache = None
    def noise(self, x):
        if self.cache is None:
            self.cache = torch.full((), float(x.shape[2]))
        return self.cache
class KeepsImages(Net):
    "The mean of the first images."
    mean = None
    def noise(self, x):
        if self.mean is None:
            self.mean = x.mean()
        return self.mean
class NotPersistent(Net):
    def start(self):
        self.register_buffer("center", torch.zeros(()), persistent=False)
    def noise(self, x):
        return self.center.add_(1) if self.training else self.center
class MuchLater(Net):
    "Whether in the thousandth call."
    calls = 0
    def noise(self, x):
        self.calls += self.training
        return float(self.calls > 1000)
class Logs(Net):
    "What decides no output: a count, the last images, gradients, a list that is too short for a million calls."
    def start(self):
        self.calls, self.means, self.last, self.size = 0, [0.0] * 20, None, 0
    def noise(self, x):
        self.means[self.calls] = float(x.mean())
        self.calls += 1
        self.last = x
        self.size = self.size or x.shape[2]
        return torch.full((), float(self.size))
    def outputs(self, y):
        if self.training:
            y.register_hook(lambda gradient: None)
            self.loss = y.square().mean()
        return y
class Grid(Net):
    "Made in a call, as it must be for images of a size that is not given before."
    def start(self):
        self.register_buffer("grid", torch.zeros(1), persistent=False)
        self.register_buffer("other", None, persistent=False)
    def noise(self, x):
        if len(self.grid) != x.shape[2]:
            self.grid = torch.linspace(-1, 1, x.shape[2])
        if self.other is None:
            self.other = torch.linspace(0, 1, x.shape[2])
        return self.grid.square().sum() + self.other.sum()
class Added(Grid):
    def start(self):
        Grid.start(self)
        self.register_buffer("other", None)
class Positive(Net):
    "Fails with other weights."
    def start(self):
        self.scale = nn.Parameter(torch.full((8,), 0.001))
    def outputs(self, y):
        return y * torch.linalg.cholesky(torch.diag(self.scale))[0, 0]
class WeightNorm(Net):
    def start(self):
        self.linear = torch.nn.utils.weight_norm(self.linear)
class Locked(Net):
    def start(self):
        import threading
        self.lock = threading.Lock()
DrawnShape = changed(start=lambda self: self.register_buffer("kept", torch.zeros(random.randrange(1000))))
def drawing(draw):
    return changed(start=lambda self: setattr(self, "drawn", draw()), outputs=lambda self, y: y[:, self.drawn])
DrawnOrder = drawing(lambda: torch.randperm(4))
DrawnPlace = drawing(lambda: random.sample(range(4), 4))
class DrawnFrom4(Net):
    "The order of four classes; of fewer none."
    def start(self):
        self.order = torch.randperm(4) if self.linear.out_features > 3 else slice(None)
    def outputs(self, y):
        return y[:, self.order]
class DrawnRarely(Net):
    "In training alone, behind a layer that starts at zero."
    def start(self):
        nn.init.zeros_(self.linear.weight), nn.init.zeros_(self.linear.bias)
        self.register_buffer("drawn", torch.randn(4), persistent=False)
    def outputs(self, y):
        return y * self.drawn if self.training else y
class DrawnBuffer(Net):
    "And a dropout, which draws in each call."
    def start(self):
        self.register_buffer("drawn", torch.randn(3, 3))
    def forward(self, x):
        x.sub_(0.5)
        return self.linear(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training) @ self.drawn)

def setting(name):
    "Gives it other memory in each call, as x.data = ... does."
    def noise(self, x):
        tensor = attrgetter(name)(self)
        tensor.data = tensor.data.clamp(-1, 1) + 0.1 * self.training
        return tensor.sum()
    return changed(noise=noise)
SetsWeight, SetsBuffer = setting("linear.weight"), setting("seen")
Hooked = changed(start=lambda self: self.linear.weight.register_hook(lambda gradient: 0 * gradient))
HookedLater = changed(start=lambda self: self.linear.weight.register_post_accumulate_grad_hook(lambda weight: None))
Skips = changed(
    forward=lambda self, x: self.linear.bias.expand(len(x), -1) if torch.rand(()) < 2 else Net.forward(self, x))

class InPlace(Net):
    def noise(self, x):
        if self.training:
            self.seen.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)) + torch.rand(3))
        return 0
"""


@pytest.fixture(autouse=True)
def nets(write) -> None:
    write({"h1_nets.py": NETS})


def build(attribute: str, classes: int = 4) -> nn.Module:
    return build_model(f"h1_nets.py:{attribute}", classes, image_size=(12, 20))


@pytest.mark.parametrize("attribute", ["Numpy", "Random"])
def test_initial_draws_follow_from_the_seed(attribute, seed):
    """Whatever the generators' states, which stay as they were."""
    drawn = []
    for init in (0, 0, 1):
        np.random.seed(seed % 1000 + len(drawn))
        random.seed(seed + len(drawn))
        before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
        with seeded(init):
            drawn.append(build(attribute).linear.weight)
        assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()) == before
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_draws_at_import_are_the_same_in_each_process(write):
    first = build("Imported").linear.weight
    write({"h1_nets.py": NETS + "# executed again\n"})
    np.random.seed(1)
    random.seed(1)
    assert torch.equal(build("Imported").linear.weight, first)


def test_the_generators_are_seeded_apart(seed):
    """NumPy's and random's algorithm is the same: from the same words they would draw the same numbers."""
    drawn = []
    for each in (seed, seed + 2**32):
        with seeded(each):
            assert np.random.random() != random.random()
            drawn.append((np.random.random(3), random.random()))
    assert not any(map(np.array_equal, *drawn))
    with seeded(2**32 + 7):  # recorded: the weights of parents are drawn from these
        assert (np.random.random(), random.random()) == (0.700726291893502, 0.2389583001065253)


REFUSED = {
    "OwnGenerator": "linear.weight differs", "OwnAtImport": "linear.weight differs",
    "Dtype": "kind differs", "Clock": "linear.weight differs", "System": "linear.weight differs",
    "Attribute": "other outputs each time", "OwnForward": "other outputs each time in training mode",
    "ClockEvaluating": "other outputs each time, also in evaluation mode", "Softmax": "a softmax",
    "SoftmaxTested": "a softmax", "SoftmaxTrained": "a softmax", "Sigmoid": "a sigmoid",
    "SeedsTorch": "seeds torch itself", "SeedsNumpy": "seeds numpy itself", "SeedsRandom": "seeds random itself",
    "Bare": "no parameters", "Lazy": "lazy layers", "Frozen": "linear.bias", "Unused": "linear.weight",
    "Two": "a value of type tuple in training", "Failing": "fails when it is trained: AttributeError",
    "Assigning": "buffer seen", "Remembering": "between calls", "RemembersTested": "between calls",
    "RemembersImages": "between calls",
    "GeneratorOfEach": "between calls", "StartsFromData": "between calls",
    "CachesWeights": "between calls", "KeepsImages": "between calls", "NotPersistent": "between calls",
    "MuchLater": "between calls", "Added": "buffer other", "Locked": "cannot be copied",
    "DrawnOrder": "draws, when it is built", "DrawnPlace": "draws, when it is built",
    "DrawnRarely": "draws, when it is built", "DrawnShape": "whether it has kept, or its shape",
    "SetsWeight": "data of linear.weight", "SetsBuffer": "data of seen",
    "Hooked": "linear.weight has a hook", "HookedLater": "linear.weight has a hook", "Skips": "in place of skipping",
    "WeightNorm": "linear.weight is computed from weights",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("attribute", REFUSED)
def test_what_is_refused(attribute):
    """Also where another network of the same file was built before."""
    build("Net")
    with pytest.raises(ConfigError) as caught:
        build(attribute)
    (line,) = str(caught.value).splitlines()
    assert attribute in line
    assert REFUSED[attribute] in line


def test_a_network_is_compared_for_each_number_of_classes_and_size_of_images():
    """Built for others before, or without a size, where nothing is run."""
    build_model("h1_nets.py:DrawnFrom4", 4)
    build_model("h1_nets.py:DrawnFrom4", 3, image_size=(12, 20))
    build_model("h1_nets.py:DrawnFrom4", 3, image_size=(12, 20))
    with pytest.raises(ConfigError, match="draws, when it is built"):
        build("DrawnFrom4", 4)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    "attribute",
    [
        "Pretrained", "LogSoftmax", "Zero", "Tenths", "Tanh", "Rectified", "Net", "InPlace", "Cached", "Logs", "Grid",
        "Positive", "DrawnBuffer",
    ],
)  # fmt: skip
def test_logits_of_any_kind_are_taken(attribute, classes):
    """The logarithms of probabilities are logits: log-softmax leaves them as they are."""
    drawn = classes == 10 and attribute not in ("Zero", "Tenths")
    for seed in range(5 if drawn else 1):
        torch.manual_seed(seed)
        build(attribute, classes)


def test_what_a_network_draws_from_is_known():
    drawn = {
        "Net": set(), "NumpyForward": {"numpy"}, "RandomForward": {"random"}, "TorchForward": {"torch"},
        "Evaluating": {"random"},
    }  # fmt: skip
    assert {attribute: draws_of(build(attribute)) for attribute in drawn} == drawn


def test_the_generators_of_all_gpus_go_on_where_they_were(monkeypatch):
    """torch.manual_seed seeds those of every GPU, whichever the network is on."""
    states = {0: "first", 1: "second"}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: states.update(dict.fromkeys(states, seed)))
    with seeded(5):
        assert states == {0: 5, 1: 5}
    assert states == {0: "first", 1: "second"}
