"""`python examples/own_network.py FOLDER`: your own network on your own images, from the folder to the figure.

FOLDER holds train/<class>/*.png (or *.jpg) and test/<class>/... ; images are resized to 32 x 32. Copy this file, put
your network in place of `SmallNet`, and go on from there. Further arguments go to fastwi.train: --experiment.k 20 ...
"""

import sys
from pathlib import Path

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Any nn.Module will do that takes images [N, 3, H, W] and returns logits [N, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits [N, classes]."""
        return self.head(self.features(images_NCHW).mean(dim=(2, 3)))


def build(classes: int) -> nn.Module:
    """What model.name calls: the network, freshly initialised, for as many classes as the folder has."""
    return SmallNet(classes)


CONFIG = """\
data: {{path: {data}}}
augment: {{padding: 4, flip: 0.5}}
model: {{name: "{this}:build"}}
optimizer: {{batch_size: 32, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{k: 3, s: 3, after: 3}}   # epochs of the parent, of each child, of their average
"""


def main(folder: str, *more: str) -> int:
    """Write the images as a dataset, write a config beside it, train."""
    from data_prep import prepare
    from fastwi.train import main as train

    data = prepare("folder", Path(folder).with_name(Path(folder).name + "_beton"), folder, size=32)
    config = data / "own_network.yaml"
    config.write_text(CONFIG.format(data=data, this=__file__))
    return train(["--config", str(config), *more])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"use: python {sys.argv[0]} FOLDER [--experiment.k 20 ...]")
    sys.exit(main(*sys.argv[1:]))
