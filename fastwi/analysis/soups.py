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


def uniform_soups(members: Population, sets: Sequence[Sequence[int]]) -> Population:
    """The uniform average of each set of members, with averaged batch-norm statistics.

    Raises ValueError for a set without members, and for rows that are not there.
    """
    weights = [[1 / len(rows) for _ in rows] for rows in sets]
    return Population.averages([[(members, row) for row in rows] for rows in sets], weights)


def greedy_soup(
    evaluator: Evaluator, members: Population, held_out: ResidentDataset, recomputation: Recomputation | None = None
) -> tuple[int, ...]:
    """The members of the greedy soup, in the order in which they were taken; of equal ones the first is.

    held_out: images that nothing was trained or is tested on. recomputation: of batch-norm statistics, of every
    network that is measured; None: members have their own, soups the average. Raises UserError for no members.
    """
    if not members.members:
        raise UserError("a soup needs at least one network")

    def accuracies(networks: Population) -> Values:
        measured = networks if recomputation is None else evaluator.recompute(networks, recomputation)
        return evaluator.scores(measured, held_out).accuracy_M

    own_M = accuracies(members)
    first, *others = sorted(range(members.members), key=lambda row: -own_M[row])
    chosen, best = [first], own_M[first]
    for row in others:
        (accuracy,) = accuracies(uniform_soups(members, [[*chosen, row]]))
        if accuracy >= best:
            chosen, best = [*chosen, row], accuracy
    return tuple(chosen)
