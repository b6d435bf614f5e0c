"""`python examples/own_network.py FOLDER`: your own network on your own images, from the folder to the figure.

FOLDER holds train/<class>/*.png (or *.jpg) and test/<class>/... ; images are resized to 32 x 32. Copy this file, put
your network in place of `SmallNet`, and go on from there. Further arguments go to fastwi.train: --experiment.k 20 ...
"""

import json
import sys
from pathlib import Path

from torch import Tensor, nn

from fastwi.cli import command
from fastwi.errors import UserError


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
model: {{name: {name}}}
optimizer: {{batch_size: 32, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{k: 3, s: 3, after: 3}}   # epochs of the parent, of each child, of their average
"""


@command  # what is wrong with the folder is one line and exit code 2
def main(words: list[str]) -> int:
    """Write the images as a dataset, write a config beside it, train."""
    from data_prep import prepare
    from fastwi.train import main as train

    if not words or words[0].startswith("-"):
        raise UserError(f"use: python {sys.argv[0]} FOLDER [--experiment.k 20 ...]")
    folder, *more = words
    data = prepare("folder", Path(f"{Path(folder).resolve()}_beton"), folder, size=32)
    config = data / "own_network.yaml"
    names = {"data": str(data), "name": f"{__file__}:build"}
    # As JSON: a name may hold what YAML would read otherwise.
    config.write_text(CONFIG.format(**{key: json.dumps(name, ensure_ascii=False) for key, name in names.items()}))
    return train(["--config", str(config), *more])


if __name__ == "__main__":
    sys.exit(main())
