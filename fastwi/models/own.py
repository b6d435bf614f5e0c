"""The user's own network: `package.module:attribute`, or `path/to/file.py:attribute` from the working directory.

The attribute is a function or a class. It is called with `classes=K` or `num_classes=K` if its signature takes one
of them (`**options` take num_classes, as torchvision's do), with `image_size=(H, W)` if it takes that, and returns an
nn.Module from images [N, 3, H, W] to logits [N, K].

Its results are named by all that it is made of (`fastwi.models.source`). What is executed is what was hashed, and a
file that it uses beside that is refused.
"""

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fastwi.config.values import nearest, show
from fastwi.errors import ConfigError
from fastwi.models import generators, load
from fastwi.models.names import FORMS, split_own
from fastwi.models.source import LISTED, Source, source_of
from fastwi.models.trial import reason, refusal, try_network, type_of
from fastwi.models.watch import watching

Builder = Callable[..., Any]
_ANOTHER_SEED = 0x5EED
_tried: set[tuple[object, ...]] = set()
"""What was executed twice and built by other draws in this process: name, digest, classes, image size."""


def build_own(name: str, classes: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the user's own network `name` twice, and try it on images of `image_size` (height, width) if given.

    The first time its files are executed twice too, and it is built once more, by other draws.

    It draws from the global generators as one building does. While its modules are imported, they are seeded with 0.

    Raises ConfigError, in one line, for a wrong module or attribute, one that is not callable, fails, or returns
    no network; for what `fastwi.models.trial` refuses; for files that its results would not be named by.
    """
    own = split_own(name)
    if own is None:
        raise ConfigError(f"model.name: {show(name)} is not {FORMS}")
    place, attribute = own
    source = source_of(name)
    with load.executing(source, place), watching() as watch:

        def call(builder: Builder) -> nn.Module:
            with watch.every_call():
                return _call(name, builder, classes, image_size)

        known = load.bring_back(source, place)
        before = generators.states()
        builder = _builder(name, place, attribute, source)
        first, other, kind = call(builder), None, (name, source.digest, classes, image_size)
        first_time = not known or kind not in _tried
        if first_time:  # what importing draws or counts must not decide the weights
            builder = _executed_again(name, place, attribute, source) or builder
        generators.restore(before)
        second = call(builder)
        if first_time:
            after = generators.states()
            with generators.seeded(_ANOTHER_SEED):
                other = call(builder)
                # Those that are where the last building left them, though this one began elsewhere.
                seeded = sorted(after.keys() - generators.drawn_from(after))
            if seeded:
                problem = f"seeds {' and '.join(seeded)} itself, so that all parents start alike"
                raise refusal(name, f"{problem}; remove that: seeds.init decides")
        with watch.every_call():
            try_network(name, second, first, other, classes, image_size)
    _require_named(name, place, source, watch.files())
    load.note_built(source, place)
    _tried.add(kind)
    return second


def _builder(name: str, place: str, dotted: str, source: Source) -> Builder:
    """The attribute of the imported module. Raises ConfigError where it is not there, or is no builder."""
    if place.endswith(".py") and not source.files:
        raise refusal(name, f"there is no file {place}")
    try:
        with generators.seeded(0):
            found: Any = load.imported(place)
    except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts exit
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        if missing and f"{place}.".startswith(f"{missing}."):
            fix = "install it, add its directory to PYTHONPATH, or name its file"
            raise refusal(name, f"there is no module {missing}; {fix}") from None
        raise refusal(name, f"importing it failed: {reason(error)}") from error
    for part in dotted.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            near = nearest(part, public)
            what = f"{found.__name__} " if inspect.isclass(found) else ""
            raise refusal(name, f"{what}has no attribute {part}" + (f"; did you mean {near}?" if near else ""))
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        raise refusal(name, "is a network already; name the class or a function that builds it")
    if not callable(found):
        raise refusal(name, f"is {type_of(found)}; name a function or class that builds the network")
    builder: Builder = found
    return builder


def _executed_again(name: str, place: str, attribute: str, source: Source) -> Builder | None:
    """The builder from another execution of the network's files; None where they can be executed only once."""
    executed = load.forget(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some registers take a name once, or warn
            return _builder(name, place, attribute, source)
    except ConfigError:
        load.put_back(executed)
        return None


def _call(name: str, builder: Builder, classes: int, image_size: tuple[int, int] | None) -> nn.Module:
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):  # some built-in callables have none
        signature = inspect.Signature()
    given = {"classes": classes, "num_classes": classes, "image_size": image_size}
    taken = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        taken.append("num_classes")
    if "classes" in taken or "num_classes" not in taken:
        del given["num_classes"]
    arguments = {key: value for key, value in given.items() if key in taken and value is not None}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        fix = "only classes or num_classes, and image_size, are given: give the rest defaults"
        if image_size is None:
            fix = "give image_size" if "'image_size'" in str(error) else fix.replace(", and image_size, are", " is")
        raise refusal(name, f"{error}; {fix}") from None
    try:
        network = builder(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise refusal(name, f"building it failed: {reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise refusal(name, f"returns {type_of(network)}, not a torch.nn.Module; return the network")
    return network


def _require_named(name: str, place: str, source: Source, used: set[Path]) -> None:
    """Raise ConfigError for a file that the network used and its results are not named by."""
    unnamed = min(used - source.by_path.keys(), default=None)
    if unnamed is None:
        return
    entry = source.files.get(Path(place).name if place.endswith(".py") else place)
    where = "in a file of your own that builds it" if entry is None else f"in {entry.path.name}"
    path = str(unnamed) if entry is None else os.path.relpath(unnamed, entry.path.parent)
    problem = f"uses {unnamed.name}, which its results would not be named by"
    raise refusal(name, f'{problem}; write {LISTED} = ["{path}"] {where}')
