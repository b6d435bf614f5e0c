"""Several networks of one graph on the same images, node by node.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastwi.data.resident import ResidentDataset
from fastwi.kernels.augment import augment
from fastwi.models.generators import seeded

BATCH = 50  # images whose activations are in memory at one time

Seen = Callable[[str, list[Tensor]], Sequence[Tensor]]
"""Called with a node's name and its value in each network; gives the values that the network goes on with."""


def images_of(dataset: ResidentDataset, size: int = BATCH) -> Iterator[Tensor]:
    """The images of `dataset` in its order as networks take them, without augmentation, float32 [N, C, H, W]."""
    every = torch.arange(len(dataset), device=dataset.labels_N.device)
    for images_DHWC, at_N in dataset.chunks(every, size):
        yield augment(images_DHWC, at_N, None, None, dataset.table_C256, 0)


@torch.no_grad()
def run_together(modules: Sequence[fx.GraphModule], images_NCHW: Tensor, seen: Seen) -> None:
    """Run all `modules`, networks of one graph, on the images. What they draw is the same for all of them."""
    graph = modules[0].graph
    runs = [fx.Interpreter(module, graph=graph) for module in modules]
    for run in runs:
        run.args_iter = iter([images_NCHW.clone()])
    generators = [torch.default_generator]
    if images_NCHW.is_cuda:
        generators.append(torch.cuda.default_generators[images_NCHW.get_device()])
    with seeded(0, images_NCHW.device):
        for node in graph.nodes:
            before = [generator.get_state() for generator in generators]
            values = list[Any]()
            for run in runs:
                for generator, state in zip(generators, before, strict=True):
                    generator.set_state(state)
                values.append(run.run_node(node))
            if node.op != "output" and all(isinstance(value, Tensor) for value in values):
                values = list(seen(node.name, values))
            for run, value in zip(runs, values, strict=True):
                run.env[node] = value
                for source in run.user_to_last_uses.get(node, ()):
                    del run.env[source]
