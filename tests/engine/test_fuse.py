"""The rewritten network computes what the plain one computes, as nearly as float32 does; or there is none."""

import copy
import operator
from types import MethodType

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from trained_networks import Corners

from fastwi.engine.fuse import fuse_batch_norm
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.cpu import library
from fastwi.kernels.shortcut import shortcut
from fastwi.models.resnet import ResNet

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")

CLEAR = 1e-5
relu, pad = functional.relu, functional.pad
Result = dict[str, Tensor]


class Net(nn.Module):
    """Two convolutions and batch norms whose outputs `join` puts together."""

    def __init__(self, join) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, 16, 3, 1, 1, bias=False) for c in (3, 16))
        self.bn1, self.bn2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.relu, self.linear, self.join = nn.ReLU(), nn.Linear(16, 5), join
        for name in ("bn1", "conv2", "bn2"):
            if name not in join.__code__.co_names:
                delattr(self, name)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.join(self, self.conv1(x_NCHW)).mean((2, 3)))


def three_users_of_the_relu(net: Net, x: Tensor) -> Tensor:
    y = relu(net.bn1(x))
    return net.bn2(net.conv2(y)) * y + y.sigmoid()


def two_users(net: Net, x: Tensor) -> Tensor:
    y = relu(net.bn1(x))
    return relu(net.bn2(net.conv2(y)) + y)


def sum_used_elsewhere(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(x) + x
    return relu(y) * y


CHANNELS = (0, 0, 0, 0, 6, 10)  # before and after those that are there
JOINS = {
    "plain chain": lambda net, x: net.relu(net.bn2(net.conv2(relu(net.bn1(x))))),
    "sum": lambda net, x: relu(net.bn2(net.conv2(x)) + x * 2),
    "sum, second operand": lambda net, x: torch.relu(torch.add(x * 2, net.bn2(net.conv2(x)))),
    "other side after the norm": lambda net, x: (net.bn2(net.conv2(x)) + net.bn1(x).sigmoid()).relu(),
    "two norms": lambda net, x: relu(net.bn1(x) + net.bn2(net.conv2(x))),
    "in place": lambda net, x: relu(net.bn1(x), inplace=True) + relu(net.bn2(net.conv2(x)), True),
    "three users": lambda net, x: net.bn2(net.conv2(y := net.bn1(x))) * y + y.sigmoid(),
    "three users of the ReLU": three_users_of_the_relu,
    "two users": two_users,
    "used twice by one": lambda net, x: (y := net.bn1(x)) + y,
    "used before the sum": lambda net, x: relu((y := net.bn1(x)) + x) * y,  # it must not be folded
    "sum used elsewhere": sum_used_elsewhere,
    "scaled sum": lambda net, x: torch.add(net.bn1(x), x, alpha=3),
    "plus a number": lambda net, x: relu(net.bn1(x) + 0.25),
    "keyword for ReLU": lambda net, x: relu(input=net.bn1(x)),
    "keyword for norm": lambda net, x: relu(net.bn2(net.conv2(net.bn1(input=x)))),
    "broadcast sum": lambda net, x: relu(net.bn1(x) + x.mean((2, 3), keepdim=True)),
    "padded by numbers": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::2], CHANNELS, value=0.5)[:, 4:20],
    "padded by zeros": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::2], CHANNELS, value=0)[:, 4:20],
    "computed padding": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::2], (0, 0, 0, 0, p := x.shape[1] // 2, p))[
        :, 4:20
    ],
    "some channels": lambda net, x: pad(net.bn1(x)[:, :8, ::2, ::2], CHANNELS)[:, 4:20],
    "padded in space": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::2], (1, 0, 0, 1, 8, 8))[:, 4:20],
    "cropped": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::2], (0, 0, 0, 0, 8, -4))[:, 4:20],
    "two strides": lambda net, x: pad(net.bn1(x)[:, :, ::2, ::4], CHANNELS)[:, 4:20],
    # One module at two places, with a ReLU behind one of them only.
    "called twice": lambda net, x: net.bn1(relu(net.bn1(x)) + x) * 0.5 + net.bn2(x),
}


def clear_images(network: nn.Module, count: int = 4) -> Tensor:
    """Images that float64 carries past every ReLU of the network at a distance of some 100 roundings."""
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


@pytest.mark.parametrize("join", JOINS)
def test_small_networks(seed, join):
    torch.manual_seed(seed)
    network = Net(JOINS[join])
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


def test_a_network_with_a_layer_that_is_not_called():
    """fx would drop it, and its buffers are passed by name."""
    network = Net(two_users)
    assert fuse_batch_norm(network) is not None
    network.idle = nn.BatchNorm2d(3, affine=False)
    assert fuse_batch_norm(network) is None


class Small(nn.Module):
    """A batch norm behind a convolution, and `around`, which may do what a trace loses."""

    def __init__(self, around=lambda net, y: y) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.rand(16, 1, 1))
        self.calls, self.around = 0, around

    def forward(self, x: Tensor) -> Tensor:
        return self.around(self, self.norm(self.conv(x))).mean((2, 3))


def sized_before(net: Small, y: Tensor) -> Tensor:
    """What was computed of y is not y."""
    channels, mean = y.shape[1], y.mean((2, 3), keepdim=True)
    y += net.shift
    return y * mean + channels


def changed_once(net: Small, y: Tensor) -> Tensor:
    """Nothing reads the old values later."""
    z = net.relu(y + y.mean())
    z += net.shift
    z -= 0.5
    return z * z.mean()


@pytest.mark.parametrize(
    "around",
    [
        lambda net, y: y * torch.exp(net.shift) + net.shift,
        lambda net, y: relu(y + y.size(1)),
        lambda net, y: torch.add(y, 1) * y,  # 1 is no `inplace`
        changed_once,
        sized_before,
    ],
)
def test_buffers_and_sizes_are_those_of_the_call(seed, around):
    torch.manual_seed(seed)
    network = Small(around)
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
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


class Optional(Small):
    """What `forward` takes beside images, which no call gives."""

    def forward(self, x: Tensor, factor: Tensor | None = None, *, plain: bool = False, **more: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if factor is None:
            y = y * self.shift
        if plain or more.get("factor") is not None:
            y = y + 1
        return y.mean((2, 3))


def test_what_a_call_does_not_give_has_its_default(seed):
    torch.manual_seed(seed)
    network, x = Optional().eval(), torch.randn(2, 3, 8, 8)
    fused = fuse_batch_norm(network)
    assert fused is not None
    torch.testing.assert_close(fused.eval()(x), network(x), rtol=1e-4, atol=1e-5)


def counting(net: Small, y: Tensor) -> Tensor:
    net.calls += 1
    return y * net.calls


def in_place_operator(net: Small, y: Tensor) -> Tensor:
    z = y
    z += 2
    return z * y


def buffer_in_place(net: Small, y: Tensor) -> Tensor:
    shift = net.shift
    shift += 1
    return y * shift


def view_in_place(net: Small, y: Tensor) -> Tensor:
    z = y[:, :8]
    z += 2
    return y


class OwnTrain(Small):
    def train(self, mode: bool = True) -> "OwnTrain":
        super().train(mode)
        self.norm.eval()
        return self


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, y):
        return y.sign()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient


def within(mode, net: Small, y: Tensor) -> Tensor:
    with mode:
        z = y.abs() + net.shift
    return y * z


def asks(question, y: Tensor) -> Tensor:
    return 2 * y if question(y) else y


def sets_data(_: Small, y: Tensor) -> Tensor:
    y.data = y.data * 2
    return y


def one_of_two_views_in_place(_: Small, y: Tensor) -> Tensor:
    z, other = y[:, :8], y[:, 4:12]
    z += 2
    return z * other


@fx.wrap
def by_user(y: Tensor) -> Tensor:
    """A function that fx does not trace through: it may do anything to its tensors, and return any of them."""
    return y


def changed_after(alias) -> nn.Module:
    """The network reads what `alias` made of an activation before that was changed in place."""

    def around(net: Small, y: Tensor) -> Tensor:
        z = net.alias(y)
        y += 1
        return z * 2

    net = Small(around)
    net.alias = alias
    return net


def changed_behind(alias) -> nn.Module:
    """The network changes in place what `alias`, a layer or a function, makes of an activation that is read again."""

    def around(net: Small, y: Tensor) -> Tensor:
        z = net.alias(y)
        z += 1
        return y

    net = Small(around)
    net.alias = alias
    return net


ALIASES = {
    "Identity": nn.Identity(), "Flatten": nn.Flatten(), "Dropout": nn.Dropout(0.1), "float": lambda y: y.float(),
    "type_as": lambda y: y.type_as(y), "attribute": lambda y: y.mT,
    "keyword": lambda y: torch.moveaxis(input=y, source=1, destination=2),
    "dropout in evaluation": lambda y: functional.dropout(y, 0.1, training=False),
    "dropout2d in evaluation": lambda y: functional.dropout2d(y, 0.1, training=False),
    "alpha dropout in evaluation": lambda y: functional.alpha_dropout(y, 0.1, training=False),
    "einsum": lambda y: torch.einsum("nchw->nhwc", y), "plus": operator.pos,
    "linalg.diagonal": lambda y: torch.linalg.diagonal(y),
    "second of broadcast_tensors": lambda y: torch.broadcast_tensors(relu(y), y)[1],
    "second of meshgrid": lambda y: torch.meshgrid(relu(y), y, indexing="ij")[1],
    "second of a list": lambda y: torch.meshgrid([relu(y), y], indexing="ij")[1],
    "second of atleast_3d": lambda y: torch.atleast_3d(relu(y), y)[1],
}  # fmt: skip
VIEWS: dict[str, tuple] = {
    "ravel": (), "diagonal": (), "flatten": (), "squeeze": (), "detach": (), "unbind": (), "reshape": ((-1,),),
    "unflatten": (1, (4, 4)), "transpose": (1, 2), "swapaxes": (1, 2), "movedim": (1, 2), "permute": ((0, 2, 3, 1),),
    "unsqueeze": (0,), "narrow": (1, 0, 4), "select": (1, 0), "chunk": (2,), "split": (2,), "swapdims": (1, 2),
    "adjoint": (), "as_strided": ((2, 16), (1024, 1)), "real": (), "conj": (), "positive": (), "resolve_neg": (),
    "atleast_3d": (), "broadcast_to": ((2, 16, 8, 8),), "broadcast_tensors": (), "meshgrid": (), "tensor_split": (2,),
    "hsplit": (2,), "vsplit": (2,), "dsplit": (2,), "split_with_sizes": ((8, 8), 1), "unsafe_split": (2,),
    "unsafe_chunk": (2,), "unsafe_split_with_sizes": ((8, 8), 1), "conj_physical": (), "cartesian_prod": (),
    "chain_matmul": (), "dequantize": (), "channel_shuffle": (1,), "pixel_shuffle": (1,), "pixel_unshuffle": (1,),
    "feature_dropout": (0.1, False),
}  # fmt: skip
"""Functions of torch, and their arguments. What is changed in place is the first part of the view."""
ALIASES |= {
    name: lambda y, name=name, arguments=arguments: getattr(torch, name)(y, *arguments)[0]
    for name, arguments in VIEWS.items()
}


@pytest.mark.parametrize("name", ALIASES)
def test_what_may_share_memory_is_no_obstacle_where_nothing_is_changed(name):
    """So it is the change for which the networks below are left alone."""
    network = Small(lambda net, y: y * 2 + net.alias(y).mean())
    network.alias = ALIASES[name]
    assert fuse_batch_norm(network) is not None


def hooked(layer: str, kind: str = "forward") -> nn.Module:
    net = Small()
    getattr(net.get_submodule(layer), f"register_{kind}_hook")(lambda *_: None)
    return net


def patched(layer: str, method: str = "forward") -> nn.Module:
    """As users change one network of a library, or one layer of it."""
    net = Small()
    module = net.get_submodule(layer)
    whole = getattr(type(module), method)
    setattr(module, method, MethodType(lambda *given: 2 * whole(*given), module))
    return net


def biasless() -> nn.Module:
    """As torch makes it of bias=False; older versions have no such argument."""
    norm = nn.BatchNorm2d(16)
    norm.bias = None
    return norm


LOST = {
    "draws": Small(lambda net, y: y + torch.randn(16, 1, 1)),
    "counts": Small(counting),
    "a constant": Small(lambda net, y: y + torch.ones(16, 1, 1) * 2),
    "module in place": Small(lambda net, y: net.relu(y) + y),
    "module in place by keyword": Small(lambda net, y: net.relu(input=y) + y),
    **{f"in place behind {name}": changed_behind(alias) for name, alias in ALIASES.items()},
    **{f"in place after {name}": changed_after(alias) for name, alias in ALIASES.items()},
    "view by another": Small(one_of_two_views_in_place),
    **{
        f"{name} in place": Small(lambda net, y, name=name: getattr(operator, name)(y, 2) * y)
        for name in ("imod", "ifloordiv", "ipow", "iand", "ior", "ixor", "ilshift", "irshift")
    },
    "result in an activation": Small(lambda net, y: torch.mul(y, 2, out=y) * y),
    "a function of the user's": Small(lambda net, y: by_user(y) * y),
    "method in place": Small(lambda net, y: y.mul_(2) + y),
    "operator in place": Small(in_place_operator),
    "buffer in place": Small(buffer_in_place),
    "view by operator": Small(view_in_place),
    "view by method": Small(lambda net, y: y.permute(0, 2, 3, 1).mul_(2).permute(0, 3, 1, 2) + y),
    "function in place": Small(lambda net, y: relu(y, inplace=True) * y),
    "forks": Small(lambda net, y: net.norm(y) if y.sum() > 0 else y),
    "dropout": Small(lambda net, y: functional.dropout(relu(y), 0.5, training=net.training)),
    "dropout in evaluation": Small(lambda net, y: functional.dropout(relu(y), 0.5, training=net.training)).eval(),
    "own train": OwnTrain(),
    "sets a mode": Small(lambda net, y: net.norm.eval()(y)),
    "sets a mode in evaluation": Small(lambda net, y: net.norm.train()(y)),
    "own gradient": Small(lambda net, y: OwnGradient.apply(y)),
    "no gradients": Small(lambda net, y: within(torch.no_grad(), net, y)),
    "no gradients by a function": Small(lambda net, y: y * torch.no_grad()(torch.abs)(y)),
    "inference": Small(lambda net, y: within(torch.inference_mode(), net, y)),
    "sets gradients": Small(lambda net, y: within(torch.set_grad_enabled(False), net, y)),
    "sets autocast": Small(lambda net, y: within(torch.autocast("cpu", enabled=False), net, y)),
    "asks for gradients": Small(lambda net, y: 3 * y if torch.is_grad_enabled() else y),
    "asks for inference": Small(lambda net, y: y if torch.is_inference_mode_enabled() else 3 * y),
    "asks for autocast": Small(lambda net, y: y if torch.is_autocast_enabled("cpu") else 3 * y),
    "asks for the type": Small(lambda net, y: asks(lambda z: isinstance(z, Tensor), y)),
    "asks for a tensor": Small(lambda net, y: asks(torch.is_tensor, y)),
    "asks for an attribute": Small(lambda net, y: asks(lambda z: hasattr(z, "missing"), y)),
    "sets data": Small(sets_data),
    "hook on an activation": Small(lambda net, y: [y, y.register_hook(lambda g: 2 * g)][0]),
    "hook on the norm": hooked("norm"),
    "hook on another layer": hooked("conv"),
    "hook on the network": hooked(""),
    "hook before the norm": hooked("norm", "forward_pre"),
    "hook before the network": hooked("", "forward_pre"),
    "backward hook": hooked("norm", "full_backward"),
    "hook before the backward pass": hooked("norm", "full_backward_pre"),
    "own forward": patched(""),
    "own forward of the norm": patched("norm"),
    "own forward of a convolution": patched("conv", "_conv_forward"),
    "no norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "not affine": nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, affine=False)),
    "no bias": nn.Sequential(nn.Conv2d(3, 16, 3), biasless()),
    "no statistics": nn.Sequential(nn.BatchNorm2d(16, track_running_stats=False)),
    "one dimension": nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("name", LOST)
def test_what_a_trace_would_freeze_or_lose_is_left_alone(name):
    """And tracing draws nothing from torch's generator."""
    state = torch.get_rng_state()
    assert fuse_batch_norm(LOST[name]) is None
    assert torch.equal(torch.get_rng_state(), state)
