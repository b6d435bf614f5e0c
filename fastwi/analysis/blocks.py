"""One block of layers at a time along the line between two networks, the rest standing still.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: replace a
block of A by (1 - alpha) A + alpha B and measure.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from fastwi.analysis.evaluator import (
    AVERAGED,
    Evaluator,
    Measured,
    Recomputation,
    Splits,
    check_alphas,
    check_members,
)
from fastwi.errors import UserError
from fastwi.population import Layout, Population


def block_groups(network: nn.Module) -> dict[str, list[str]]:
    """The blocks of a network by name, in order: its top-level parts, and of a numbered list each element.

    So the residual blocks `blocks.0`, `blocks.1` ... of a ResNet are one each. A name that is only a number has the
    layer's class beside it: `0 Conv2d`.
    """
    layers = dict(network.named_modules())
    found = dict[str, list[str]]()
    for parameter, _ in network.named_parameters():
        first, *rest = parameter.split(".")
        name = ".".join([first, *itertools.takewhile(str.isdigit, rest)])
        shown = f"{name} {type(layers[name]).__name__}" if name.replace(".", "").isdigit() else name
        found[shown] = [name]
    return found


def evaluate_blocks(
    evaluator: Evaluator,
    pair: Population,
    splits: Splits,
    alphas: ArrayLike,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
) -> Measured:
    """Move one block at a time to each of `alphas` between the members A and B of `pair`, and evaluate.

    groups: blocks by name, each a list of prefixes: "blocks.0" takes blocks.0.conv1.weight, and not blocks.01. None:
    `block_groups`. Parameters in no group never move; averaged statistics move with their block. Names of the
    networks: `rest` (A: the block moves from A to B; B: from B to A), `block`, `alpha`. Raises UserError for bad
    input.
    """
    alphas_L = check_alphas(alphas)
    check_members(pair, 2)
    groups = block_groups(evaluator.network) if groups is None else groups
    _check_groups(groups, pair.layout)
    pair = pair.to(evaluator.device)
    places = list(itertools.product(range(2), groups, alphas_L.tolist()))

    def build(first: int, last: int) -> Population:
        chosen = places[first:last]
        mixed = pair.clone_rows([rest for rest, _, _ in chosen])
        to_b_R = np.array([1 - alpha if rest else alpha for rest, _, alpha in chosen])
        moved = pair.combine(torch.from_numpy(np.stack([1 - to_b_R, to_b_R], axis=1)))
        for spans, into_MP, from_MP in (
            (pair.layout.parameters, mixed.weights_MP, moved.weights_MP),
            (pair.layout.statistics, mixed.statistics_MQ, moved.statistics_MQ),
        ):
            for row, (_, block, _) in enumerate(chosen):
                for span in spans:
                    if any(_is_under(span.name, prefix) for prefix in groups[block]):
                        span.view(into_MP[row]).copy_(span.view(from_MP[row]))
        return mixed

    names = [{"rest": "AB"[rest], "block": block, "alpha": alpha} for rest, block, alpha in places]
    # Twice the copies of a line: `mixed` and `moved` are built together.
    return evaluator.measure(names, build, splits, treatments, recomputation, copies=4)


def _check_groups(groups: Mapping[str, Sequence[str]], layout: Layout) -> None:
    if not groups:
        raise UserError("groups name no block; give a dict of block names and parameter prefixes, or None")
    for name, prefixes in groups.items():
        if isinstance(prefixes, str) or not prefixes:
            raise UserError(f"block {name!r} has {prefixes!r}; give a list of parameter prefixes")
        for prefix in prefixes:
            if not any(_is_under(span.name, prefix) for span in layout.parameters):
                raise UserError(
                    f"block {name!r}: no parameter is called {prefix!r} or starts with {prefix + '.'!r}; "
                    f"the first is {layout.parameters[0].name!r}"
                )


def _is_under(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")
