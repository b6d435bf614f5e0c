"""Small networks for the tests of populations and of the public functions."""

import torch
from torch import Tensor, nn

from fastwi.population import Population


class SmallNet(nn.Module):
    """Convolutions (one grouped), batch norm, odd widths, a non-persistent buffer and 97 outputs."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, (3, 1), groups=channels, bias=False)
        self.head = nn.Linear(channels, 97)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]), persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits [N, 97]."""
        centred_NCHW = images_NCHW - self.mean[:, None, None]
        x_NCHW = self.depthwise(self.norm(self.stem(centred_NCHW)).relu())
        return self.head(x_NCHW.mean(dim=(2, 3))) * self.scale


class TiedNet(nn.Module):
    """An encoder and a decoder that share one weight, and one batch norm under two names."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.decoder = nn.Linear(6, 6)
        self.again = self.norm if tied else nn.BatchNorm1d(6)
        if tied:
            self.decoder.weight = self.encoder.weight


def trained(network: nn.Module, seed: int) -> nn.Module:
    """`network` with every parameter and buffer drawn from `seed`, so that no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name in network.state_dict():
                drawn = torch.rand(buffer.shape, generator=generator) * 100 + 1
                buffer.copy_(drawn.to(buffer.dtype))
    return network


def drawn_population(seed: int, members: int) -> Population:
    """Members that differ in weights, momentum, statistics and counters."""
    population = Population.from_modules([trained(SmallNet(), seed + m) for m in range(members)])
    for m in range(members):
        for view in population.momentum(m).values():
            view.copy_(torch.randn(view.shape, generator=torch.Generator().manual_seed(seed + 100 + m)))
    population.counters_MB[:, 0] = 10 * torch.arange(members, 0, -1)
    return population


def same_rows(mine: Population, rows: list[int], other: Population, others: list[int]) -> bool:
    """Whether these members of `mine` are those of `other`, to the bit."""
    matrices = zip(mine.matrices, other.matrices, strict=True)
    return all(torch.equal(a[rows], b[others]) for a, b in matrices)
