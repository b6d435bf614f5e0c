"""The package data_prep, which lies beside fastwi and comes with it, whatever else has its name."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fastwi.errors import UserError

_FILE = Path(__file__).resolve().parents[1] / "data_prep" / "__init__.py"


def data_prep_module(name: str) -> ModuleType:
    """`data_prep.name`. By its name alone one in the user's directory would be found first.

    Raises UserError where another module of that name is in use already.
    """
    package = sys.modules.get("data_prep")
    if package is None:
        spec = importlib.util.spec_from_file_location("data_prep", _FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["data_prep"] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    if Path(package.__file__ or "").resolve() != _FILE:
        raise UserError(
            f"{package.__file__}: has the name of fastwi's data_prep; rename it, or do not import it here"
        )
    return importlib.import_module(f"data_prep.{name}")
