"""The rewritten network computes what the plain one computes, as nearly as float32 does; or there is none."""

import copy
import operator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastwi.engine.fuse import fuse_batch_norm
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.cpu import library
from fastwi.kernels.shortcut import shortcut
from fastwi.models.resnet import ResNet

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")

CLEAR = 1e-5
Result = dict[str, Tensor]


class Net(nn.Module):
    """Two convolutions and batch norms whose outputs `join` puts together."""

    def __init__(self, join) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, 16, 3, 1, 1, bias=False) for c in (3, 16))
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(16, 5)
        self.join = join
        for name in ("bn1", "conv2", "bn2"):
            if name not in join.__code__.co_names:
                delattr(self, name)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.join(self, self.conv1(x_NCHW)).mean((2, 3)))


def plain_chain(net: Net, x: Tensor) -> Tensor:
    return net.relu(net.bn2(net.conv2(functional.relu(net.bn1(x)))))


def shortcut_before(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn2(net.conv2(x)) + x * 2)


def shortcut_first_operand(net: Net, x: Tensor) -> Tensor:
    return torch.relu(torch.add(x * 2, net.bn2(net.conv2(x))))


def shortcut_after(net: Net, x: Tensor) -> Tensor:
    """The other side of the sum is computed after the batch norm."""
    y = net.bn2(net.conv2(x))
    z = net.bn1(x).sigmoid()
    return (y + z).relu()


def two_norms(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn1(x) + net.bn2(net.conv2(x)))


def in_place(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn1(x), inplace=True) + functional.relu(net.bn2(net.conv2(x)), True)


def three_users(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(x)
    return net.bn2(net.conv2(y)) * y + y.sigmoid()


def three_users_of_the_relu(net: Net, x: Tensor) -> Tensor:
    y = functional.relu(net.bn1(x))
    return net.bn2(net.conv2(y)) * y + y.sigmoid()


def two_users(net: Net, x: Tensor) -> Tensor:
    y = functional.relu(net.bn1(x))
    return functional.relu(net.bn2(net.conv2(y)) + y)


def used_twice_by_one(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(x)
    return y + y


def used_before_the_sum(net: Net, x: Tensor) -> Tensor:
    """The batch norm has another user than the sum: it must not be folded."""
    y = net.bn1(x)
    return functional.relu(y + x) * y


def sum_used_elsewhere(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(x) + x
    return functional.relu(y) * y


def scaled_sum(net: Net, x: Tensor) -> Tensor:
    return torch.add(net.bn1(x), x, alpha=3)


def plus_a_number(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn1(x) + 0.25)


def keyword_relu(net: Net, x: Tensor) -> Tensor:
    return functional.relu(input=net.bn1(x))


def keyword_input(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn2(net.conv2(net.bn1(input=x))))


def broadcast_sum(net: Net, x: Tensor) -> Tensor:
    return functional.relu(net.bn1(x) + x.mean((2, 3), keepdim=True))


def called_twice(net: Net, x: Tensor) -> Tensor:
    """One module at two places, with a ReLU behind one of them only."""
    return net.bn1(functional.relu(net.bn1(x)) + x) * 0.5 + net.bn2(x)


JOINS = [
    plain_chain, shortcut_before, shortcut_first_operand, shortcut_after, two_norms, in_place, three_users,
    three_users_of_the_relu, two_users, used_twice_by_one, used_before_the_sum, sum_used_elsewhere, scaled_sum,
    plus_a_number, keyword_relu, keyword_input, broadcast_sum, called_twice,
]  # fmt: skip


class Corners(TorchFunctionMode):
    """How near the inputs of ReLUs come to 0: there rounding may turn one over, and gradients jump."""

    def __init__(self) -> None:
        super().__init__()
        self.nearest = float("inf")

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in (functional.relu, torch.relu, Tensor.relu, torch.relu_):
            x = arguments[0] if arguments else keywords["input"]
            self.nearest = min(self.nearest, x.detach().abs().min().item())
        return function(*arguments, **keywords)


def clear_images(network: nn.Module, count: int = 4) -> Tensor:
    """Images that float64 carries past every ReLU of the network at a distance of some 100 roundings.

    Which they are, float64 alone says; of 50,000 inputs of ReLUs, as resnet20 has on 4 images, one in two are.
    """
    plain = copy.deepcopy(network).double().train()
    for _ in range(100):
        x = torch.randn(count, 3, 8, 8)
        with Corners() as corners, torch.no_grad():
            plain(x.double())
        if corners.nearest > CLEAR:
            return x
    raise AssertionError("no images are clear of the corners of ReLUs")


def one_step(network: nn.Module, x: Tensor, labels: Tensor) -> Result:
    """Logits in training, gradients, buffers after it, and logits in evaluation with these buffers."""
    network.train()
    logits = network(x)
    loss = functional.cross_entropy(logits, labels)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    result = {f"gradient of {n}": g for n, g in zip(names, gradients, strict=True) if g is not None}
    result |= {f"buffer {n}": b.clone() for n, b in network.named_buffers()} | {"logits": logits.detach()}
    network.eval()
    with torch.no_grad():
        return result | {"evaluated": network(x)}


def compare(network: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Fused float32 is as near to plain float64 as plain float32 is, give or take a factor."""
    labels = torch.arange(len(x)) % 5
    truth = one_step(copy.deepcopy(network).double(), x.double(), labels)
    plain, found = one_step(network, x, labels), one_step(fused, x, labels)
    assert found.keys() == plain.keys() == truth.keys()
    for name, value in truth.items():
        scale = value.double().abs().max() + 1e-3
        plain_error, error = ((r[name].double() - value).abs().max() / scale for r in (plain, found))
        assert error <= 4 * plain_error + 1e-5, f"{name}: {error:.1e}, plain {plain_error:.1e}"


def fused_norms(network: nn.Module) -> list[FusedBatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, FusedBatchNorm2d)]


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in (*network.named_parameters(), *network.named_buffers())}


def test_resnet20(seed):
    torch.manual_seed(seed)
    network = ResNet(3, 10)
    before = copy.deepcopy(network.state_dict())
    fused = fuse_batch_norm(network)
    assert fused is not None
    assert shapes_of(fused) == shapes_of(network)
    assert len(fused_norms(fused)) == 19
    assert all(norm.relu for norm in fused_norms(fused))
    targets = [node.target for node in fused.graph.nodes]
    assert not {operator.add, functional.relu} & set(targets)
    assert targets.count(shortcut) == 2
    compare(network, fused, clear_images(network))
    assert not fused_norms(network)
    assert list(network.state_dict()) == list(before)
    with torch.no_grad():  # the copy shares nothing
        kept = copy.deepcopy(network.state_dict())
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.add_(1)
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.parametrize("join", JOINS, ids=lambda join: join.__name__)
def test_small_networks(seed, join):
    torch.manual_seed(seed)
    network = Net(join)
    for name, parameter in network.named_parameters():
        if name.startswith("bn"):
            nn.init.uniform_(parameter, -0.5, 1.5)
    fused = fuse_batch_norm(network)
    assert fused is not None
    assert shapes_of(fused) == shapes_of(network)
    compare(network, fused, clear_images(network))


@pytest.mark.parametrize(
    ("join", "folded"),
    [
        (two_users, [(True, 2), (True, 1)]),
        (sum_used_elsewhere, [(False, 2)]),
        (three_users_of_the_relu, [(True, 1), (False, 1)]),
    ],
)
def test_what_is_folded(join, folded):
    assert [(norm.relu, norm.users) for norm in fused_norms(fuse_batch_norm(Net(join)))] == folded


class Small(nn.Module):
    """A batch norm behind a convolution. Its kinds do things around them that a trace loses, or may lose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.rand(16, 1, 1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.around(self.norm(self.conv(x))).mean((2, 3))

    def around(self, y: Tensor) -> Tensor:
        return y


class WithBuffer(Small):
    def around(self, y: Tensor) -> Tensor:
        return y * torch.exp(self.shift) + self.shift


class WithSize(Small):
    def around(self, y: Tensor) -> Tensor:
        return functional.relu(y + y.size(1))


class Drawing(Small):
    def around(self, y: Tensor) -> Tensor:
        return y + torch.randn(16, 1, 1)


class Counting(Small):
    def around(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y * self.calls


class Constant(Small):
    def around(self, y: Tensor) -> Tensor:
        return y + torch.ones(16, 1, 1) * 2


class InPlace(Small):
    def around(self, y: Tensor) -> Tensor:
        return self.relu(y) + y


class InPlaceMethod(Small):
    def around(self, y: Tensor) -> Tensor:
        return y.mul_(2) + y


class InPlaceOperator(Small):
    def around(self, y: Tensor) -> Tensor:
        z = y
        z += 1
        return z * y


class InPlaceFunction(Small):
    def around(self, y: Tensor) -> Tensor:
        return functional.relu(y, inplace=True) * y


class OwnTrain(Small):
    def train(self, mode: bool = True) -> "OwnTrain":
        super().train(mode)
        self.norm.eval()
        return self


def hooked(on_norm: bool) -> nn.Module:
    net = Small()
    (net.norm if on_norm else net).register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return net


@pytest.mark.parametrize("kind", [WithBuffer, WithSize])
def test_buffers_and_sizes_are_those_of_the_call(seed, kind):
    torch.manual_seed(seed)
    network = kind()
    fused = fuse_batch_norm(network)
    assert fused is not None
    state = {name: value.clone() for name, value in (*network.named_parameters(), *network.named_buffers())}
    state["shift"] = torch.rand(16, 1, 1)
    x = torch.randn(2, 3, 8, 8)
    for training in (True, False):
        states = [{name: value.clone() for name, value in state.items()} for _ in range(2)]
        y, z = (
            torch.func.functional_call(each.train(training), own, (x,))
            for each, own in zip((network, fused), states, strict=True)
        )
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
        for name, value in states[0].items():
            torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5)


def dropout_function(net: Net, x: Tensor) -> Tensor:
    return functional.dropout(functional.relu(net.bn2(net.conv2(x))), 0.5, training=net.training)


class Forking(Small):
    def around(self, y: Tensor) -> Tensor:
        return self.norm(y) if y.sum() > 0 else y


@pytest.mark.parametrize(
    "network",
    [
        *(kind() for kind in (Drawing, Counting, Constant, InPlace, InPlaceMethod, InPlaceOperator, InPlaceFunction)),
        OwnTrain(), Forking(), hooked(True), hooked(False), Net(dropout_function), Net(dropout_function).eval(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False)),
        nn.Sequential(nn.BatchNorm2d(16, track_running_stats=False)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
    ],
    ids=lambda network: type(network).__name__,
)  # fmt: skip
def test_what_a_trace_would_freeze_or_lose_is_left_alone(network):
    """And tracing draws nothing from torch's generator."""
    state = torch.get_rng_state()
    assert fuse_batch_norm(network) is None
    assert torch.equal(torch.get_rng_state(), state)
