"""Networks of one's own with tensors in float32 that no layer knows of, as published networks have them."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH = 16


class _Patches(nn.Module):
    """Patches of 4 x 4 pixels as tokens [N, T, WIDTH], a body, and the mean of its tokens to logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH)
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, classes)

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        return self.patches(x_NCHW).flatten(2).transpose(1, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(functional.gelu(self.body(self.norm(self.tokens(x_NCHW)))).mean(1))


class PositionBuffer(_Patches):
    """Positions in a buffer."""

    def __init__(self, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(classes)
        tokens = (image_size[0] // 4) * (image_size[1] // 4)
        self.register_buffer("positions", torch.linspace(-1, 1, tokens * WIDTH).view(tokens, WIDTH))

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        return super().tokens(x_NCHW) + self.positions


class PositionProduct(PositionBuffer):
    """Attention to positions: a product with the buffer, which autocast casts and engine `stacked` does not."""

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = super().tokens(x_NCHW).to(x_NCHW.dtype)
        return tokens + tokens @ (self.positions.t() @ self.positions)


class MadeInForward(_Patches):
    """A ramp over the tokens, made in forward."""

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = super().tokens(x_NCHW)
        return tokens * torch.linspace(0.5, 1.5, tokens.shape[1], device=tokens.device)[:, None]


class DropPath(_Patches):
    """A residual branch that whole images skip, by a mask in float32."""

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = super().tokens(x_NCHW)
        branch = self.body(self.norm(tokens))
        if not self.training:
            return tokens + branch
        mask = torch.floor(0.7 + torch.rand(len(tokens), 1, 1, device=tokens.device))
        return tokens + branch / 0.7 * mask


class Attention(_Patches):
    """torch's own attention and encoder layer, and a norm over two axes."""

    def __init__(self, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(classes)
        tokens = (image_size[0] // 4) * (image_size[1] // 4)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, dropout=0, batch_first=True)
        self.over_both = nn.LayerNorm([tokens, WIDTH])

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = self.over_both(super().tokens(x_NCHW))
        return self.layer(tokens + self.attention(tokens, tokens, tokens)[0])


class Convolutions(nn.Module):
    """Batch norms that are fused on a CPU, a scale of each channel, and a mask over the places in float32."""

    def __init__(self, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.second, self.other = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.scale, self.head = nn.Parameter(torch.ones(WIDTH, 1, 1)), nn.Linear(WIDTH, classes)
        self.register_buffer("window", torch.hann_window(image_size[0])[:, None] + 0.5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = functional.relu(self.norm(self.first(x_NCHW))) * self.window
        x_NCHW = functional.relu(self.other(self.second(x_NCHW)) + x_NCHW) * self.scale
        return self.head(x_NCHW.mean((2, 3)))


class Recurrent(nn.Module):
    """Rows as a sequence."""

    def __init__(self, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(3 * image_size[1], WIDTH, batch_first=True), nn.Linear(WIDTH, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.layer(x_NCHW.permute(0, 2, 1, 3).flatten(2))[0].mean(1))


class MixesItself(_Patches):
    """Hands two dtypes to an operation that autocast does not know."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.mixed = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = super().tokens(x_NCHW)
        return self.mixed(tokens, tokens)


class MixesMeasured(_Patches):
    """Does so in evaluation alone."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.register_buffer("mixing", torch.ones(WIDTH, WIDTH, WIDTH))

    def tokens(self, x_NCHW: Tensor) -> Tensor:
        tokens = super().tokens(x_NCHW)
        return tokens if self.training else functional.bilinear(tokens, tokens, self.mixing)


class Checkpointed(_Patches):
    """Its backward pass calls a layer again."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h_NTW = checkpoint(self.body, self.norm(self.tokens(x_NCHW)), use_reentrant=False)
        return self.head(torch.relu(h_NTW).mean(1))


MIXING = (PositionBuffer, MadeInForward, DropPath, Attention, Convolutions, Recurrent)
