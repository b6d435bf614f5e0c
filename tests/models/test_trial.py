"""What a network of the user's own draws from is seeded; what differs each time, or is no logits, is refused."""

import random

import numpy as np
import pytest
import torch

from fastwi.config.read import config_from_mapping
from fastwi.engine.choose import build_network
from fastwi.errors import ConfigError
from fastwi.models.generators import draws_of, seeded
from fastwi.models.registry import build_model

NETS = """
import random, sys, time, os
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
        self.start()
    def start(self):
        pass
    def noise(self):
        return 0
    def forward(self, x):
        return self.linear(x.mean((2, 3))) + self.noise()

def starting(value, **more):
    def start(self):
        with torch.no_grad():
            self.linear.weight.fill_(value())
    return type("Started", (Net,), {"start": start})

def noisy(value, evaluates=False):
    def noise(self):
        return value() if self.training or evaluates else 0
    return type("Noisy", (Net,), {"noise": noise})

Numpy = starting(np.random.standard_normal)
Random = starting(random.random)
Imported = starting(lambda: AT_IMPORT)
OwnGenerator = starting(lambda: OF_ITS_OWN.standard_normal())
OwnAtImport = starting(lambda: ONCE)
Clock = starting(lambda: time.time_ns() % 1_000_000)
System = starting(lambda: os.urandom(1)[0] + os.urandom(1)[0] / 256)
Attribute = type("Attribute", (Net,), {
    "start": lambda self: setattr(self, "order", OF_ITS_OWN.standard_normal()), "noise": lambda self: self.order})

def seeding(seed):
    def start(self):
        seed(5)
        self.linear.reset_parameters()
    return type("Seeding", (Net,), {"start": start})
SeedsTorch, SeedsNumpy, SeedsRandom = map(seeding, (torch.manual_seed, np.random.seed, random.seed))
Pretrained = starting(lambda: 0.5)

NumpyForward = noisy(np.random.standard_normal)
RandomForward = noisy(random.random)
TorchForward = noisy(lambda: torch.randn(()))
Evaluating = type("Evaluating", (Net,), {"noise": lambda self: 0 if self.training else random.random()})
OwnForward = noisy(lambda: OF_ITS_OWN.standard_normal())
ClockEvaluating = noisy(lambda: time.time_ns() % 1000, True)

class Dtype(Net):
    "Another dtype each time, whatever is executed again."
    def start(self):
        sys.h1_built = getattr(sys, "h1_built", 0) + 1
        self.register_buffer("kind", torch.zeros(2, dtype=(torch.float32, torch.float64)[sys.h1_built % 2]))

class Softmax(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)
class SoftmaxTested(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits if self.training else logits.softmax(1)
class SoftmaxTrained(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits.softmax(1) if self.training else logits
class Sigmoid(Net):
    def forward(self, x):
        return super().forward(x).sigmoid()
class LogSoftmax(Net):
    def forward(self, x):
        return super().forward(x).log_softmax(1)
class Uniform(Net):
    "Logits that start as if they were probabilities."
    def start(self):
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 1 / len(self.linear.bias))
class Zero(Net):
    def start(self):
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
class Tanh(Net):
    def forward(self, x):
        return super().forward(x).tanh()
class Rectified(Net):
    def forward(self, x):
        return super().forward(x).relu()

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


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "h1_nets.py"
    path.write_text(NETS)
    return path.name


def weights(name: str, seed: int) -> torch.Tensor:
    return build_network(config_from_mapping({"model": {"name": name}, "seeds": {"init": seed}}), 4).linear.weight


@pytest.mark.parametrize("attribute", ["Numpy", "Random"])
def test_initial_draws_follow_from_the_seed(nets, attribute, seed):
    """Whatever the generators' states, which stay as they were."""
    name = f"{nets}:{attribute}"
    drawn = []
    for init in (0, 0, 1):
        np.random.seed(seed % 1000 + len(drawn))
        random.seed(seed + len(drawn))
        before = np.random.get_state()[1].tolist(), random.getstate()
        drawn.append(weights(name, init))
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_draws_at_import_are_the_same_in_each_process(nets, tmp_path):
    name = f"{nets}:Imported"
    first = weights(name, 0)
    (tmp_path / "h1_nets.py").write_text(NETS + "# executed again\n")
    np.random.seed(1)
    random.seed(1)
    assert torch.equal(weights(name, 0), first)


def test_the_generators_are_seeded_apart(seed):
    """NumPy's and random's algorithm is the same: from the same words they would draw the same numbers."""
    with seeded(seed):
        assert np.random.random() != random.random()
        first = np.random.random(3), random.random()
    with seeded(seed + 2**32):
        assert np.random.random() != random.random()
        other = np.random.random(3), random.random()
    assert not any(map(np.array_equal, first, other))


REFUSED = {
    "OwnGenerator": "linear.weight differs", "OwnAtImport": "linear.weight differs",
    "Dtype": "kind differs", "Clock": "linear.weight differs", "System": "linear.weight differs",
    "Attribute": "other outputs each time", "OwnForward": "other outputs each time in training mode",
    "ClockEvaluating": "other outputs each time, also in evaluation mode", "Softmax": "a softmax",
    "SoftmaxTested": "a softmax", "SoftmaxTrained": "a softmax", "Sigmoid": "a sigmoid",
    "SeedsTorch": "seeds torch itself", "SeedsNumpy": "seeds numpy itself", "SeedsRandom": "seeds random itself",
    "Bare": "no parameters", "Lazy": "lazy layers", "Frozen": "more.bias", "Two": "a value of type tuple in training",
    "Failing": "fails when it is trained: RuntimeError: not today (h1_nets.py line", "Unused": "more.weight",
    "Assigning": "buffer seen",
}  # fmt: skip


@pytest.mark.parametrize("image_size", [None, (12, 20)])
@pytest.mark.parametrize("attribute", REFUSED)
def test_what_is_refused(nets, attribute, image_size):
    if (attribute, image_size) == ("Failing", None):
        return  # it may be made for a size that is not tried
    with pytest.raises(ConfigError) as caught:
        build_model(f"{nets}:{attribute}", 4, image_size=image_size)
    assert "\n" not in str(caught.value)
    assert attribute in str(caught.value)
    assert REFUSED[attribute] in str(caught.value)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    "attribute", ["Pretrained", "LogSoftmax", "Uniform", "Zero", "Tanh", "Rectified", "Net", "InPlace"]
)
def test_logits_of_any_kind_are_taken(nets, attribute, classes):
    """The logarithms of probabilities are logits: log-softmax leaves them as they are."""
    for seed in range(5):
        torch.manual_seed(seed)
        build_model(f"{nets}:{attribute}", classes)


def test_what_a_network_draws_from_is_known(nets):
    found = {
        attribute: draws_of(build_model(f"{nets}:{attribute}", 4))
        for attribute in ("Net", "NumpyForward", "RandomForward", "TorchForward", "Evaluating")
    }
    assert found == {
        "Net": set(), "NumpyForward": {"numpy"}, "RandomForward": {"random"}, "TorchForward": {"torch"},
        "Evaluating": {"random"},
    }  # fmt: skip
