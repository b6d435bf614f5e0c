"""Studies of a finished sweep: one question each, answered from its store. Nothing is trained.

Each module of this package is a study: its `STUDY` holds the question, the computation, the tables and the figure.
To add one, add a file with a `STUDY`. The modules import no torch before they measure.
"""

import pkgutil
from functools import cache
from importlib import import_module

from fastwi.report.study import Study


@cache
def all_studies() -> dict[str, Study]:
    """The studies by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: import_module(f"{__name__}.{name}").STUDY for name in names}
