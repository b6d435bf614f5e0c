"""The interpreter of M networks at once against each network by itself, and what it keeps after a call."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.engine.mixed import low_precision_names
from fastwi.engine.stack import StackedNetwork
from fastwi.models.registry import build_model

SUMS = {
    "x + y": lambda x, y: x + y,
    "add(x, y)": lambda x, y: torch.add(x, y),
    "add(x, 2, y)": lambda x, y: torch.add(x, 2, y),  # an old form of alpha
    "add(x, y, alpha=2)": lambda x, y: torch.add(x, y, alpha=2),
    "add(x, other=y)": lambda x, y: torch.add(x, other=y),
    "x mean(y)": lambda x, y: x * torch.mean(y, dim=(2, 3), keepdim=True),
}


class Summed(nn.Module):
    """A convolution, and `join` of its output and the square of that."""

    def __init__(self, join) -> None:
        super().__init__()
        self.conv, self.join = nn.Conv2d(3, 4, 3, padding=1), join

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.conv(x_NCHW)
        return torch.mean(self.join(y_NCHW, y_NCHW * y_NCHW), dim=(2, 3))


def stacked(network: nn.Module, exact: bool) -> tuple[StackedNetwork, dict[str, Tensor]]:
    made = StackedNetwork.of(network, exact)
    assert made is not None
    return made, {
        name: torch.stack([value.detach(), 2 * value.detach()])
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }


def check_members(network: nn.Module, exact: bool, size: tuple[int, int] = (6, 5)) -> None:
    """Each member's outputs, and its buffers afterwards, are those of the network with its tensors; in float64."""
    x_MNHWC = torch.randn(2, 3, *size, 3, dtype=torch.float64)
    made, tensors = stacked(network.double(), exact)
    before = {key: value.clone() for key, value in tensors.items()}
    logits_MNK = made(tensors, x_MNHWC, True)
    for m in range(2):
        own = {key: value[m] for key, value in before.items()}
        expected = torch.func.functional_call(network, own, (x_MNHWC[m].permute(0, 3, 1, 2),))
        torch.testing.assert_close(logits_MNK[m], expected.detach().float(), rtol=1e-4, atol=1e-5)
        for key, value in own.items():
            if key not in made.counted:  # to which the caller adds
                torch.testing.assert_close(tensors[key][m], value, msg=key)


@pytest.mark.filterwarnings("ignore:This overload of add is deprecated")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", SUMS)
def test_sums_are_those_of_the_network(seed, name, exact):
    torch.manual_seed(seed)
    check_members(Summed(SUMS[name]), exact)


class NormSummed(nn.Module):
    """The sum of a batch norm and what is no activation of its shape, and a ReLU."""

    def __init__(self, other) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), other
        self.shift = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = functional.relu(self.norm(self.conv(x_NCHW)) + self.other(self, x_NCHW))
        return torch.mean(y_NCHW * y_NCHW.sigmoid(), dim=(2, 3)) + self.shift.flatten()


OTHERS = {
    "parameter": lambda net, x: net.shift,
    "size": lambda net, x: x.size(1),
    "mean": lambda net, x: x.mean((1, 2, 3), keepdim=True),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_added_to_a_batch_norm_need_not_be_an_activation(seed, name, exact):
    torch.manual_seed(seed)
    check_members(NormSummed(OTHERS[name]), exact)


class Read(nn.Module):
    """A batch norm, by itself or in a sum, that convolutions alone read; and an uneven option-A shortcut."""

    def __init__(self, readers: int, summed: bool) -> None:
        super().__init__()
        self.norm, self.summed = nn.BatchNorm2d(3), summed
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 3, padding=1) for _ in range(readers))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.norm(x_NCHW)
        y_NCHW = functional.relu(y_NCHW + x_NCHW if self.summed else y_NCHW)
        y_NCHW = sum(conv(y_NCHW) for conv in self.convs)
        return torch.mean(functional.pad(y_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), dim=(2, 3))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_batch_norms_that_convolutions_read(seed, readers, summed, exact):
    torch.manual_seed(seed)
    check_members(Read(readers, summed), exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "wrn16_4", "convnet"])
def test_built_in_networks(seed, name, exact):
    torch.manual_seed(seed)
    check_members(build_model(name, 10, 1 / 16), exact, (32, 32))


CONVOLUTIONS = {
    "dilated": {"dilation": 2}, "in groups": {"groups": 3}, "reflected": {"padding": 1, "padding_mode": "reflect"},
    "two strides": {"stride": (1, 2)}, "two paddings": {"padding": (1, 0)}, "same": {"padding": "same"},
    "plain": {"stride": 2, "padding": 1},
}  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind_are_those_of_the_network(seed, name, exact):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, **CONVOLUTIONS[name]), nn.Flatten())
    check_members(network, exact)


class Centred(nn.Module):
    """Images less their mean, in a buffer that no state dict holds, and what is behind batch norms and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor([0.1, 0.2, 0.3])[:, None, None], persistent=False)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.grouped, self.linear = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.norm(self.conv(x_NCHW - self.mean_C11)).relu()
        return self.linear((self.grouped(x_NCHW) * self.mean_C11.mean()).mean((2, 3)))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_state_dict_holds_is_the_same_for_every_member(seed, dtype, exact):
    torch.manual_seed(seed)
    network, x_MNHWC = Centred(), torch.randn(2, 8, 6, 5, 3)
    made, tensors = stacked(network, exact)
    del tensors["mean_C11"]
    low = low_precision_names(network)
    mixed = {name: value.to(dtype) if name in low else value.clone() for name, value in tensors.items()}
    logits_MNK = made(mixed, x_MNHWC.to(dtype), True)
    for m in range(2):
        own = {key: value[m].clone() for key, value in tensors.items()}
        expected = torch.func.functional_call(network, own, (x_MNHWC[m].permute(0, 3, 1, 2),)).detach()
        assert (logits_MNK[m] - expected).norm() < (1e-5 if dtype == torch.float32 else 0.02) * expected.norm()


class Opened(nn.Module):
    """A ReLU that changes a convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.mean(functional.relu(self.conv(x_NCHW), inplace=True), dim=(2, 3))


@pytest.mark.parametrize("exact", [True, False])
def test_a_relu_in_place_has_its_gradient(seed, exact):
    torch.manual_seed(seed)
    network, x_MNHWC = Opened(), torch.randn(2, 3, 6, 5, 3)
    made, tensors = stacked(network, exact)
    weight = tensors["conv.weight"].requires_grad_()
    (found,) = torch.autograd.grad(made(tensors, x_MNHWC, True).square().sum(), weight)
    one = [torch.func.functional_call(network, {"conv.weight": w}, (x.permute(0, 3, 1, 2),))
           for w, x in zip(weight, x_MNHWC, strict=True)]  # fmt: skip
    (expected,) = torch.autograd.grad(torch.stack(one).square().sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_no_tensor_is_kept_after_a_call(fails):
    seen: list[weakref.ref[Tensor]] = []

    def join(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    made, tensors = stacked(Summed(join), True)
    x_MNHWC = torch.randn(2, 3, 6, 5, 3)
    convolution = made._convolution

    def watched(*arguments):
        images = convolution(*arguments)
        seen.append(weakref.ref(images.x_MNHWC))
        return images

    def failing(*_arguments):
        raise torch.OutOfMemoryError("no memory left")

    made._convolution = watched
    if fails:
        made._mapped = failing
        with pytest.raises(torch.OutOfMemoryError):
            made(tensors, x_MNHWC, False)
    else:
        made(tensors, x_MNHWC, False)
    seen += [weakref.ref(x_MNHWC), *map(weakref.ref, tensors.values())]
    del x_MNHWC, tensors
    assert [each() for each in seen] == [None] * 4
