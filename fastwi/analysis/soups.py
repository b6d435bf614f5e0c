"""Soups: averages of several networks, and which networks to average.

Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time, ICML, section 2. The uniform soup averages all. The greedy soup (recipe 1) takes the
networks in order of their accuracy on held-out images, and keeps one where the average with it is as accurate there.

Shapes: S sets, M members.
"""

from collections.abc import Sequence

from fastwi.analysis.evaluator import Evaluator, Recomputation, Values
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population

Sets = Sequence[Sequence[int]]


def uniform_soups(members: Population, sets: Sets) -> Population:
    """The uniform average of each set of members, with averaged batch-norm statistics."""
    return Population.averages(
        [[(members, row) for row in rows] for rows in sets], [[1 / len(rows)] * len(rows) for rows in sets]
    )


def greedy_soups(
    evaluator: Evaluator,
    members: Population,
    sets: Sets,
    held_out: ResidentDataset,
    recomputation: Recomputation | None = None,
) -> list[tuple[int, ...]]:
    """The members of each set's greedy soup, in the order in which they were taken; of equal ones the first is.

    held_out: images that nothing was trained or is tested on. recomputation: of batch-norm statistics, of every
    network that is measured; None: members have their own, soups the average. Raises UserError for an empty set.
    """
    if not all(sets):
        raise UserError("a set has no members; a soup needs at least one")

    def accuracies(networks: Population) -> Values:
        measured = networks if recomputation is None else evaluator.recompute(networks, recomputation)
        return evaluator.scores(measured, held_out).accuracy_M

    own_M = accuracies(members)
    ranked = [sorted(rows, key=lambda row: -own_M[row]) for rows in sets]
    chosen = [[rows[0]] for rows in ranked]
    best_S = [own_M[rows[0]] for rows in ranked]
    for step in range(1, max(map(len, sets), default=1)):
        going = [s for s, rows in enumerate(ranked) if step < len(rows)]
        tried = [[*chosen[s], ranked[s][step]] for s in going]
        for s, rows, accuracy in zip(going, tried, accuracies(uniform_soups(members, tried)), strict=True):
            if accuracy >= best_S[s]:
                chosen[s], best_S[s] = rows, accuracy
    return [tuple(rows) for rows in chosen]
