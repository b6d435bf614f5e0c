"""A control for the trainer: ResNet20 of He et al. 2016 on CIFAR-10 in plain PyTorch. It imports nothing of fastwi.

The images of `python -m data_prep folder`, the schedule of configs/resnet20_160_epochs.yaml: batches of 128, SGD at
0.1 with momentum 0.9 and weight decay 1e-4, a tenth of it after half and three quarters of the epochs. A line of JSON
an epoch; the same command goes on where it was stopped.

    python -m benchmarks.peers.control cifar10.zip --out control --epochs 160
"""

import argparse
import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Section 4.2 of the paper, shortcut A."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride, self.more = channels // channels_in, (channels - channels_in) // 2
        self.first = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, self.stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        same = functional.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(self.second(self.first(x_NCHW)) + same)


def resnet20() -> nn.Sequential:
    """Weights: normal by fan out for convolutions, PyTorch's default for the linear layer."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(before, after) for before, after in itertools.pairwise(widths)]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def read(source: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, H, W] and labels of a zip with .../train/CLASS/*.jpg and .../test/CLASS/*.jpg."""
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if f"{split}/" in name and not name.endswith("/"))
        images = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    classes = sorted({Path(name).parent.name for name in names})
    labels = [classes.index(Path(name).parent.name) for name in names]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def augmented(x_NCHW: Tensor) -> Tensor:
    """Each image padded by 4 black pixels, cropped at random, flipped by a coin."""
    count, _, height, width = x_NCHW.shape
    padded = functional.pad(x_NCHW, (4, 4, 4, 4))
    places = torch.randint(0, 9, (count, 2)).tolist()
    crops = torch.stack([padded[n, :, y : y + height, x : x + width] for n, (y, x) in enumerate(places)])
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, crops.flip(3), crops)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, with a line an epoch in OUT/epochs.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="zip of train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="directory of epochs.jsonl and the last state")
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bf16", action="store_true", help="autocast; else float32")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    given = parser.parse_args(arguments)
    torch.manual_seed(given.seed)
    (images, labels), (test_images, test_labels) = read(given.source, "train"), read(given.source, "test")
    given.out.mkdir(parents=True, exist_ok=True)
    pixels = images.float().div(255)
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    network = resnet20().to(memory_format=torch.channels_last)
    run = torch.compile(network) if given.compile else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    drops = [given.epochs // 2, given.epochs * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    state, rows = given.out / "last.pt", list[dict[str, float]]()
    if state.exists():
        saved = torch.load(state)
        rows = saved["rows"]
        torch.set_rng_state(saved["generator"])
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    def logits(x_NCHW: Tensor) -> Tensor:
        x_NCHW = ((x_NCHW / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
            return run(x_NCHW)

    for epoch in range(len(rows) + 1, given.epochs + 1):
        network.train()
        losses = []
        for chosen in torch.randperm(len(images)).split(given.batch):
            if len(chosen) == given.batch:  # what is left is dropped
                loss = functional.cross_entropy(logits(augmented(images[chosen])).float(), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        schedule.step()
        network.eval()
        with torch.no_grad():
            right = sum(
                int((logits(x).argmax(1) == y).sum())
                for x, y in zip(test_images.split(500), test_labels.split(500), strict=True)
            )
        accuracy = 100 * right / len(test_labels)
        rows.append({"epoch": epoch, "train_loss": sum(losses) / len(losses), "test_accuracy": accuracy})
        print(json.dumps(rows[-1]), flush=True)
        saved = {name: part.state_dict() for name, part in parts.items()}
        torch.save(saved | {"rows": rows, "generator": torch.get_rng_state()}, state.with_suffix(".new"))
        (given.out / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        state.with_suffix(".new").replace(state)


if __name__ == "__main__":
    main()
