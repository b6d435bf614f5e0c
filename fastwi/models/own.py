"""The user's own network: `package.module:attribute`, or `path/to/file.py:attribute` from the working directory.

The attribute is a function or a class. It is called with `classes=K` or `num_classes=K` if its signature takes one
of them (`**options` take num_classes, as torchvision's do), with `image_size=(H, W)` if it takes that, and returns an
nn.Module from images [N, 3, H, W] to logits [N, K].

Its results are named by all that it is made of (`fastwi.models.source`). What is executed is what was hashed, and a
file that it uses beside that is refused.
"""

import importlib
import inspect
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fastwi.config.values import show
from fastwi.errors import ConfigError
from fastwi.models import generators, load
from fastwi.models.names import split_own
from fastwi.models.refusal import hint, reason, refusal, type_of
from fastwi.models.source import LISTED, Source, source_of
from fastwi.models.trial import try_network
from fastwi.models.watch import watching

Builder = Callable[..., Any]
_ANOTHER_SEED = 0x5EED


def build_own(name: str, classes: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the user's own network `name` twice, and try it.

    It draws from the global generators of torch, NumPy and random as one building does. Importing its modules draws
    nothing from them: within, they are seeded with 0.

    image_size: (height, width) in pixels. Without it several stand in: the network is refused if it takes one of
    them and gives logits of the right shape for none.

    Raises ConfigError, in one line, for a wrong module or attribute, one that is not callable, fails, or returns
    no network; for what `fastwi.models.trial` refuses; for files that its results would not be named by.
    """
    own = split_own(name)
    if own is None:
        raise ConfigError(f"model.name: {show(name)} is not package.module:attribute or path/to/file.py:attribute")
    place, attribute = own
    source = source_of(name)
    entry = load.entry_name(place)
    try:
        with watching() as watch, load.executing(source, place):

            def call(builder: Builder) -> nn.Module:
                with watch.every_call():
                    return _call(name, builder, classes, image_size)

            first, second = _built_twice(name, place, attribute, source, call)
            with watch.every_call():
                try_network(name, second, first, classes, image_size)
        _require_named(name, place, source, watch.files())
    except ConfigError:
        load.set_current(None, entry)
        raise
    return second


def _built_twice(
    name: str, place: str, attribute: str, source: Source | None, call: Callable[[Builder], nn.Module]
) -> tuple[nn.Module, nn.Module]:
    """Two networks from the same draws. Where files are executed, they are executed for each of them."""
    entry = load.entry_name(place)
    fresh = source is None or not load.is_current(source, entry)
    if fresh and source is not None:
        taken = load.taken_name(source)
        if taken is not None:
            raise refusal(name, f"its module {taken} has the name of an installed one, which is in use; rename it")
        load.forget(source)
    before = generators.states()
    builder = _builder(name, place, attribute, source)
    first = call(builder)
    if fresh and source is not None:
        executed = load.forget(source)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some registers take a name once, or warn
                builder = _builder(name, place, attribute, source)
        except ConfigError:
            sys.modules.update(executed)
        load.set_current(source, entry)
    generators.restore(before)
    second = call(builder)
    if fresh:
        _require_seeded(name, lambda: call(builder))
    return first, second


def _require_seeded(name: str, build: Callable[[], nn.Module]) -> None:
    """Raise ConfigError where a building leaves generators where the last one did, though it began elsewhere."""
    after = generators.states()
    with generators.seeded(_ANOTHER_SEED):
        build()
        itself = generators.GENERATORS - generators.drawn_from(after)
    if itself:
        which = " and ".join(sorted(itself))
        raise refusal(name, f"seeds {which} itself, so that all parents start alike; remove that: seeds.init decides")


def _builder(name: str, place: str, attribute: str, source: Source | None) -> Builder:
    with generators.seeded(0):
        module = _from_file(name, place, source) if place.endswith(".py") else _from_module(name, place)
        return _attribute(name, module, attribute)


def _require_named(name: str, place: str, source: Source | None, used: set[Path]) -> None:
    """Raise ConfigError for a file that the network used and its results are not named by."""
    unnamed = sorted(path for path in used if source is None or path not in source.by_path)
    if not unnamed:
        return
    entry = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if entry is None and source is not None and place in source.files:
        entry = source.files[place].path
    where = "in a file of your own that builds it" if entry is None else f"in {entry.name}"
    path = str(unnamed[0]) if entry is None else os.path.relpath(unnamed[0], entry.parent)
    raise refusal(
        name, f'uses {unnamed[0].name}, which its results would not be named by; write {LISTED} = ["{path}"] {where}'
    )


def _from_module(name: str, dotted: str) -> ModuleType:
    parts = dotted.split(".")
    for depth in range(1, len(parts) + 1):
        parent = ".".join(parts[: depth - 1])
        try:
            importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError as error:
            if error.name != ".".join(parts[:depth]):  # the module is there, and imports another that is not
                raise refusal(name, f"importing it failed: {reason(error)}") from error
            where = getattr(sys.modules[parent], "__path__", []) if parent else None
            siblings = [found.name for found in pkgutil.iter_modules(where)]
            known = hint(parts[depth - 1], siblings, f"{parent}." if parent else "", listed=bool(parent))
            if not parent and not known:
                known = "; install it, add its directory to PYTHONPATH, or name its file"
            raise refusal(name, f"there is no module {'.'.join(parts[:depth])}{known}") from None
        except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts exit
            raise refusal(name, f"importing it failed: {reason(error)}") from error
    return sys.modules[dotted]


def _from_file(name: str, place: str, source: Source | None) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file() or source is None:
        files = [found.name for found in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise refusal(name, f"there is no file {place}{hint(path.name, files)}")
    try:
        return load.load_file(place, source)
    except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts exit
        raise refusal(name, f"importing it failed: {reason(error)}") from error


def _attribute(name: str, module: ModuleType, dotted: str) -> Callable[..., Any]:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            what = f"{found.__name__} " if inspect.isclass(found) else ""
            raise refusal(name, f"{what}has no attribute {part}{hint(part, public, listed=True)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        raise refusal(name, "is a network already; name the class or a function that builds it")
    if not callable(found):
        raise refusal(name, f"is of type {type(found).__name__}; name a function or class that builds the network")
    return found


def _call(name: str, builder: Callable[..., Any], classes: int, image_size: tuple[int, int] | None) -> nn.Module:
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # some built-in callables have none
        signature = inspect.Signature()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = [p.name for p in signature.parameters.values() if p.kind in by_name]
    options = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    keyword = "classes" if "classes" in taken else "num_classes" if "num_classes" in taken or options else None
    arguments: dict[str, Any] = {} if keyword is None else {keyword: classes}
    if image_size is not None and "image_size" in taken:
        arguments["image_size"] = image_size
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise refusal(name, f"{error}; only {_given(image_size)} given: give the rest defaults") from None
    try:
        network = builder(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise refusal(name, f"building it failed: {reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise refusal(name, f"returns {type_of(network)}, no torch.nn.Module; return the network")
    return network


def _given(image_size: tuple[int, int] | None) -> str:
    return "classes or num_classes is" if image_size is None else "classes or num_classes, and image_size, are"
