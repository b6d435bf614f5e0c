"""The names that `model.name` takes, apart from the models so that checking a name needs no torch."""

import re
from pathlib import Path

from fastwi.config.values import nearest, show

MODEL_NAMES: tuple[str, ...] = (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet20_b", "resnet32_b", "resnet44_b", "resnet56_b", "resnet110_b",
    "resnet20_gn", "resnet32_gn", "resnet44_gn", "resnet56_gn", "resnet110_gn",
    "resnet18", "vgg11", "vgg13", "vgg16", "wrn16_4", "wrn28_10", "convnet",
)  # fmt: skip
"""The model registry's names, in its order. Every one of them has a width."""
_LISTED = f"resnet20, 32, 44, 56, 110 (each also with _b or _gn), {', '.join(MODEL_NAMES[15:])}"

FORMS = "package.module:attribute or path/to/file.py:attribute"
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_own(name: str) -> bool:
    """Whether `name` means a network of the user's own: only those names hold a colon."""
    return ":" in name


def split_own(name: str) -> tuple[str, str] | None:
    """('package.module' or 'path/to/file.py', 'attribute'), or None where `name` is of neither form."""
    place, _, attribute = name.rpartition(":")
    is_place = _MODULE.fullmatch(place) or (place.endswith(".py") and place != ".py")
    return (place, attribute) if is_place and _MODULE.fullmatch(attribute) else None


def placeless(name: str) -> str:
    """`name` without the directories of a file: beside a digest of the source they name nothing."""
    own = split_own(name)
    return f"{Path(own[0]).name}:{own[1]}" if own is not None and own[0].endswith(".py") else name


def model_problem(name: str, width: float = 1.0, initialisation: str = "default") -> str | None:
    """What is wrong with `model.name`, and others for it, as far as their text tells, in one line; or None."""
    if name.endswith(".py"):
        return f"model.name: {show(name)} is a file; add the name of the network in it, as in {name}:MyNetwork"
    if not is_own(name):
        if name in MODEL_NAMES:
            return None
        guess = nearest(name, MODEL_NAMES)
        asked = f"did you mean {guess}? " if guess else ""
        return f"model.name: {show(name)} is not a known model; {asked}valid: {_LISTED}, or your own as {FORMS}"
    if split_own(name) is None:
        return f"model.name: {show(name)} is not of the form {FORMS}; write it so"
    if width != 1:
        return f"model.width: {width:g} for {show(name)}, which has no width; leave it out, or build it in there"
    if initialisation != "default":
        return (
            f"model.initialisation: {initialisation} for {show(name)}, which draws its own weights; leave it out, or "
            "draw them in there"
        )
    return None
