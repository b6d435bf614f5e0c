"""One block of layers at a time along the line between two networks, the rest standing still.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: replace a
block of A by (1 - alpha) A + alpha B and measure. Each block alone may have no barrier where the whole line has one.

Shapes: D = 2 directions, G blocks, L places on the line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastwi.analysis.evaluator import (
    AVERAGED,
    MEMORY_BYTES,
    Evaluator,
    LossAndError,
    Recomputation,
    Splits,
    Values,
    check_alphas,
    check_rows,
    measure,
)
from fastwi.errors import UserError
from fastwi.population import Layout, Population, Span


@dataclass(frozen=True)
class Block:
    """The parameters and statistics of one block."""

    name: str
    parameters: tuple[Span, ...]
    statistics: tuple[Span, ...]


@dataclass(frozen=True)
class BlocksResult(LossAndError):
    """Loss (nats) and error (%) by split and treatment, float64 [2, G, L]: direction, block, alpha.

    Direction 0 has the rest at A and the block on its way from A to B; direction 1 has A and B exchanged.
    """

    blocks: tuple[str, ...]
    alphas_L: Values

    def place(self, treatment: str, *at: int) -> dict[str, Any]:
        """Direction, block and alpha of one network."""
        d, g, place = at
        return {"rest": "AB"[d], "block": self.blocks[g], "alpha": float(self.alphas_L[place])}


def blocks_of(layout: Layout, groups: Mapping[str, Sequence[str]] | None = None) -> tuple[Block, ...]:
    """The blocks of an architecture, in order.

    groups: blocks by name, each a list of prefixes of parameters and statistics: "blocks.0" takes
    blocks.0.conv1.weight, and not blocks.01. None: one for each top-level child with parameters, and one for each of
    the network's own parameters. Raises UserError for a prefix that no parameter has, and for no group.
    """
    if groups is None:
        groups = {name: [name] for name in dict.fromkeys(span.name.split(".")[0] for span in layout.parameters)}
    if not groups:
        raise UserError("groups name no block; give a dict of block names and parameter prefixes, or None")
    for name, prefixes in groups.items():
        if isinstance(prefixes, str) or not prefixes:
            raise UserError(f"block {name!r} has {prefixes!r}; give a list of parameter prefixes")
        for prefix in prefixes:
            if not _under(layout.parameters, [prefix]):
                raise UserError(
                    f"block {name!r}: no parameter is called {prefix!r} or starts with {prefix + '.'!r}; "
                    f"the first is {layout.parameters[0].name!r}"
                )
    return tuple(
        Block(name, _under(layout.parameters, prefixes), _under(layout.statistics, prefixes))
        for name, prefixes in groups.items()
    )


def evaluate_blocks(
    evaluator: Evaluator,
    population: Population,
    splits: Splits,
    alphas: ArrayLike,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    ends: tuple[int, int] = (0, 1),
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> BlocksResult:
    """Move one block at a time to each of `alphas` between members A = ends[0] and B = ends[1], and evaluate.

    groups: see `blocks_of`; parameters in no group never move. Treatments are those of `evaluate_line` without "own":
    averaged statistics move with their block. Raises UserError for bad input.
    """
    alphas_L = check_alphas(alphas)
    check_rows(population, ends)
    blocks = blocks_of(population.layout, groups)
    pair = population.clone_rows(ends).to(evaluator.device)
    shape = 2, len(blocks), len(alphas_L)
    places = list(np.ndindex(shape))

    def build(first: int, last: int) -> Population:
        chosen = places[first:last]
        mixed = pair.clone_rows([d for d, _, _ in chosen])
        to_b_R = np.array([1 - alphas_L[place] if d else alphas_L[place] for d, _, place in chosen])
        moved = pair.combine(torch.from_numpy(np.stack([1 - to_b_R, to_b_R], axis=1)))
        for row, (_, g, _) in enumerate(chosen):
            for spans, into_MP, from_MP in (
                (blocks[g].parameters, mixed.weights_MP, moved.weights_MP),
                (blocks[g].statistics, mixed.statistics_MQ, moved.statistics_MQ),
            ):
                for span in spans:
                    span.view(into_MP[row]).copy_(span.view(from_MP[row]))
        return mixed

    # `moved` lives beside `mixed`: half the networks at a time.
    found = measure(evaluator, len(places), build, splits, treatments, recomputation, memory_bytes // 2)
    names = tuple(block.name for block in blocks)
    return BlocksResult(*found.arrange(lambda values_L: values_L.reshape(shape)), names, alphas_L)


def _under(spans: Sequence[Span], prefixes: Sequence[str]) -> tuple[Span, ...]:
    """The spans that are called as one of `prefixes`, or lie under it."""
    return tuple(s for s in spans if any(f"{s.name}.".startswith(f"{prefix}.") for prefix in prefixes))
