"""The package data_prep, which lies beside fastwi and comes with it, whatever else has its name."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from fastwi.errors import UserError

_TOP = Path(__file__).resolve().parents[1]


def data_prep_module(name: str) -> ModuleType:
    """`data_prep.name`. By its name alone one in the user's directory would be found first.

    Raises UserError where another module of that name is in use already.
    """
    sys.path.insert(0, str(_TOP))
    try:
        package = importlib.import_module("data_prep")
    finally:
        sys.path.remove(str(_TOP))
    if Path(package.__file__ or "").parent != _TOP / "data_prep":
        raise UserError(
            f"{package.__file__}: has the name of fastwi's data_prep; rename it, or do not import it here"
        )
    return importlib.import_module(f"data_prep.{name}")
