"""A finished sweep opened for studies: which points are measured, and any state as a population."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.config.schema import Config
from fastwi.config.sweep import KEEP, SweepSpec
from fastwi.errors import UserError
from fastwi.experiment.planner import plan_sweep
from fastwi.experiment.todo import lost_with, stopped_states, without_lost
from fastwi.experiment.tree import MeasurementKey
from fastwi.models.changes import network_change
from fastwi.sealed import MANIFEST

if TYPE_CHECKING:
    from fastwi.data.resident import ResidentDataset
    from fastwi.experiment.store import Measurement
    from fastwi.population import Population


class OpenedSweep:
    """A sweep and its store, for analyses: which points are measured, and any state as a population.

    A context manager. Nothing is trained: a state that the store does not have is refused.
    """

    def __init__(self, spec: SweepSpec, results: Path | None = None) -> None:
        """Raises UserError where the store or a dataset is not there.

        results: the sweep's directory. A user's network whose source made other results than these is refused too.
        """
        from fastwi.experiment.resident import ResidentStates
        from fastwi.experiment.resources import Resources
        from fastwi.experiment.store import Store

        self.planned = plan_sweep(spec)
        change = results and network_change(results / MANIFEST, self.planned.networks)
        if change:
            raise UserError(f"{results}: {change}; bring the source back, or run the sweep again")
        self.store = Store.open(spec.options.store, create=False)
        tree = self.planned.tree
        self.resources = Resources(tree)
        self.measured: dict[MeasurementKey, Measurement]
        self.measured = without_lost(tree, self.store.measurements(tree.measurement_keys()))
        self.left_out: tuple[str, ...] = ()
        """The cells of which a study left out pairs that diverged, in words."""
        self._stored = self.store.states(tree.keys[node] for node in tree.epoch_nodes())
        self._resident = ResidentStates(tree, self.store.directory, self.resources, 0)

    def resident_splits(self, config: Config) -> "tuple[ResidentDataset, ResidentDataset]":
        """Training and test images, of which studies take any. Raises UserError where they are streamed."""
        from fastwi.data.resident import require_resident

        train, test = self.resources.splits(config)
        return require_resident(train, "an analysis"), require_resident(test, "an analysis")

    def __enter__(self) -> "OpenedSweep":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def lost(self) -> set[str]:
        """The states that diverged, and those that would be made of them."""
        tree = self.planned.tree
        return {tree.keys[node] for node in lost_with(tree, stopped_states(tree, self.measured.values()))}

    def has(self, keys: Iterable[str]) -> bool:
        """Whether all the states `keys` are stored, or can be made of stored ones."""
        return not self._missing(keys)

    def states(self, keys: Sequence[str]) -> "Population":
        """The states `keys` as the members of one population, in their order; an average has averaged statistics.

        Raises UserError for a state that the store does not have, and DamagedState for one that is damaged.
        """
        self.require(keys)
        tree = self.planned.tree
        nodes = [tree.nodes[key] for key in keys]
        files = self.store.state_files({tree.keys[source] for node in nodes for source in tree.sources(node)})
        return self._resident.gather(nodes, files, trains=False).plain

    def require(self, keys: Iterable[str]) -> None:
        """Raise UserError where one of the states `keys` is not stored, and cannot be made of stored ones."""
        missing = self._missing(keys)
        if not missing:
            return
        planned = self.planned
        enough = [keep for keep in KEEP if missing.keys() <= planned.kept(keep)]
        again = "" if planned.spec.options.keep in enough else f" with sweep.keep: {enough[0]}"
        raise UserError(
            f"{self.store.directory}: lacks {len(missing)} states, the first at epoch "
            f"{planned.tree.epochs[min(missing)]}; run the sweep{again}"
        )

    def _missing(self, keys: Iterable[str]) -> dict[int, None]:
        """The epochs of which the store lacks the states that the states `keys` are made of."""
        tree = self.planned.tree
        sources = (source for key in keys for source in tree.sources(tree.nodes[key]))
        return dict.fromkeys(source for source in sources if tree.keys[source] not in self._stored)
