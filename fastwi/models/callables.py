"""The name of a network that is given as a class or a function: that of the file, or the module, which has it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fastwi.config.values import show
from fastwi.errors import ConfigError
from fastwi.models.source import is_local

_MOVE = "write it at the top level of a .py file, and import it from there"


def name_of(network: Callable[..., Any]) -> str:
    """`model.name` of a class or function that builds a network: `/path/to/file.py:attribute`.

    Of one in a package, or in an installed module: `package.module:attribute`. Raises ConfigError, in one line,
    for what no file has under a name of its own.
    """
    module_name, attribute = getattr(network, "__module__", None), getattr(network, "__qualname__", None)
    if isinstance(network, nn.Module):
        raise ConfigError("network: is a network already; give the class or a function that builds it")
    if not callable(network) or not isinstance(module_name, str) or not isinstance(attribute, str):
        raise ConfigError(f"network: {show(network)}; give a class or a function that builds the network")
    if "<" in attribute:
        raise ConfigError(f"network: {attribute} is a lambda, or defined within a function; {_MOVE}")
    module = sys.modules.get(module_name)
    file, spec = getattr(module, "__file__", None) or "", getattr(module, "__spec__", None)
    # A script run as `python -m package.module` is called __main__, and has its name here.
    dotted = module_name if spec is None else spec.name
    script = dotted == "__main__"
    if not Path(file).is_file() or (script and not file.endswith(".py")):
        raise ConfigError(
            f"network: {attribute} is defined in a notebook or at the prompt, and results are named by a network's "
            f"file; {_MOVE}"
        )
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found != network:
        raise ConfigError(f"network: {Path(file).name} has something else under the name {attribute}; give that")
    by_file = script or ("." not in dotted and file.endswith(".py") and is_local(file))
    return f"{Path(file).resolve() if by_file else dotted}:{attribute}"
