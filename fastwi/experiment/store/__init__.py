"""The store: trained states and measurements on disk, shared by any number of sweeps and processes at once.

    store.json                      format and version
    index.sqlite                    measurements, states that are there, claims, attempts
    states/ab/<key>.safetensors     a population of one member; the index knows its size and SHA-256
    metrics.parquet                 all measurements, for other tools and to make a lost index again
    owners/<id>.lock                held (flock) by a live process that claims work
    precision.json                  what `engine.precision: auto` was where the store was begun
    sweeps/NAME.yaml                the sweeps that it was made for
    *.lock                          locks of the index, of writing, and of turns
    damaged/                        what was found damaged; `gc` removes it

Nothing of a state or a measurement is used before its checksum is checked.
"""

from fastwi.experiment.store.owner import Owner
from fastwi.experiment.store.records import DamagedIndex, DamagedState, Measurement, StoredState
from fastwi.experiment.store.repair import rebuild
from fastwi.experiment.store.states import read_states, write_states
from fastwi.experiment.store.store import Store

__all__ = [
    "DamagedIndex", "DamagedState", "Measurement", "Owner", "Store", "StoredState", "read_states", "rebuild",
    "write_states",
]  # fmt: skip
