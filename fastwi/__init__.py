"""High-throughput linear weight interpolation: train a parent, clone it, average the children, find out why.

The names below and the modules of the package (`fastwi.train`, `fastwi.analysis`, ...) are imported on first use, so
that `import fastwi` and every `--help` stay free of torch. `fastwi.sweep` is a module that can be called.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from fastwi.version import __version__

if TYPE_CHECKING:
    from fastwi.api import average, interpolate_
    from fastwi.population import Layout, Population
    from fastwi.population.state_file import load_state_dict, save_state_dict
    from fastwi.python.entry import run, sweep
    from fastwi.python.load import load_network
    from fastwi.report.results import Results

_HOMES = {
    "fastwi.api": ("average", "interpolate_"),
    "fastwi.population": ("Layout", "Population"),
    "fastwi.population.state_file": ("load_state_dict", "save_state_dict"),
    "fastwi.python.entry": ("run",),
    "fastwi.python.load": ("load_network",),
    "fastwi.report.results": ("Results",),
}

__all__ = [
    "Layout", "Population", "Results", "__version__", "average", "interpolate_", "load_network", "load_state_dict",
    "run", "save_state_dict", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public name from its home, or the module, on first use (PEP 562)."""
    if name in _modules():
        return importlib.import_module(f"fastwi.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'fastwi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__) | _modules())


def _modules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
