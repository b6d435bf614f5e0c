"""The user's own network: `package.module:attribute`, or `path/to/file.py:attribute` from the working directory.

The attribute is a function or a class. It is called with `classes=K` or `num_classes=K` if its signature takes one
of them (`**options` take num_classes, as torchvision's do), with `image_size=(H, W)` if it takes that, and returns an
nn.Module from images [N, 3, H, W] to logits [N, K].

Shapes: N images, H height, W width, K classes.
"""

import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastwi.config.wording import show
from fastwi.errors import ConfigError
from fastwi.models.names import split_own

TRIED_SIZES = ((32, 32), (16, 16), (64, 64))
"""Image sizes (height, width) in pixels that a network is tried on where the size of the images is not known."""

_MOST_LISTED = 8
_LONGEST_REASON = 200


def build_own(name: str, classes: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the user's own network `name` and try it, in evaluation mode, on two black images.

    Importing the module draws nothing from torch's CPU generator, so that the first network built and a later one
    have the same initial weights from the same seed.

    image_size: (height, width) in pixels. Without it `TRIED_SIZES` stand in: the network is refused if it takes one
    of them and gives logits of the right shape for none.

    Raises ConfigError, in one line, for a wrong module or attribute, one that is not callable, fails, or returns
    no network, and for logits of another shape than [N, K].
    """
    own = split_own(name)
    if own is None:
        raise ConfigError(f"model.name: {show(name)} is not package.module:attribute or path/to/file.py:attribute")
    with torch.random.fork_rng(devices=[]):
        module = _from_file(name, own[0]) if own[0].endswith(".py") else _from_module(name, own[0])
        builder = _attribute(name, module, own[1])
    network = _call(name, builder, classes, image_size)
    _try(name, network, classes, image_size)
    _try_to_train(name, network, image_size)
    return network


def _from_module(name: str, dotted: str) -> ModuleType:
    parts = dotted.split(".")
    for depth in range(1, len(parts) + 1):
        parent = ".".join(parts[: depth - 1])
        try:
            importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError as error:
            if error.name != ".".join(parts[:depth]):  # the module is there, and imports another that is not
                raise _refusal(name, f"importing it failed: {_reason(error)}") from error
            where = getattr(sys.modules[parent], "__path__", []) if parent else None
            siblings = [found.name for found in pkgutil.iter_modules(where)]
            hint = _hint(parts[depth - 1], siblings, f"{parent}." if parent else "", listed=bool(parent))
            if not parent and not hint:
                hint = "; install it, add its directory to PYTHONPATH, or name its file"
            raise _refusal(name, f"there is no module {'.'.join(parts[:depth])}{hint}") from None
        except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts exit
            raise _refusal(name, f"importing it failed: {_reason(error)}") from error
    return sys.modules[dotted]


def _from_file(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        files = [found.name for found in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise _refusal(name, f"there is no file {place}{_hint(path.name, files)}")
    # Run anew each time, as a script is: a file that was edited between two runs of a session is read again.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"fastwi_own_{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise _refusal(name, f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises; scripts exit
        del sys.modules[spec.name]
        raise _refusal(name, f"importing it failed: {_reason(error)}") from error
    return module


def _attribute(name: str, module: ModuleType, dotted: str) -> Callable[..., Any]:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            what = f"{found.__name__} " if inspect.isclass(found) else ""
            raise _refusal(name, f"{what}has no attribute {part}{_hint(part, public, listed=True)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        raise _refusal(name, "is a network already; name the class or a function that builds it")
    if not callable(found):
        raise _refusal(name, f"is of type {type(found).__name__}; name a function or class that builds the network")
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
        raise _refusal(name, f"{error}; only {_given(image_size)} given: give the rest defaults") from None
    try:
        network = builder(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise _refusal(name, f"building it failed: {_reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise _refusal(name, f"returns {_type(network)}, no torch.nn.Module; return the network")
    return network


def _given(image_size: tuple[int, int] | None) -> str:
    return "classes or num_classes is" if image_size is None else "classes or num_classes, and image_size, are"


@torch.no_grad()
def _try(name: str, network: nn.Module, classes: int, image_size: tuple[int, int] | None) -> None:
    """Raise ConfigError where `network` gives no logits [2, K]. A copy runs: no buffer and no draw is changed."""
    wrong = None
    for height, width in TRIED_SIZES if image_size is None else (image_size,):
        try:
            with torch.random.fork_rng(devices=[]):
                found = copy.deepcopy(network).eval()(torch.zeros(2, 3, height, width))
        except Exception as error:  # whatever the user's code raises
            if image_size is None:  # it may be made for another size
                continue
            problem = f"fails on images of {height} x {width} pixels (take image_size to build it for them)"
            raise _refusal(name, f"{problem}: {_reason(error)}") from error
        if isinstance(found, Tensor) and found.shape == (2, classes):
            return
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else _type(found)
        wrong = wrong or (
            f"gives {got} for 2 images of {height} x {width} pixels and {classes} classes; return logits of shape "
            f"(2, {classes}), and take the number of classes as classes or num_classes"
        )
    if wrong is not None:
        raise _refusal(name, wrong)


def _try_to_train(name: str, network: nn.Module, image_size: tuple[int, int] | None) -> None:
    """Raise ConfigError where a training step of `network` would fail, or leave out or lose a part of it."""
    parameters = dict(network.named_parameters())
    if not parameters:
        raise _refusal(name, "has no parameters to train")
    if any(is_lazy(each) for each in (*network.parameters(), *network.buffers())):
        raise _refusal(name, "has lazy layers, whose sizes are not known before they run; give the sizes")
    frozen = next((each for each, parameter in parameters.items() if not parameter.requires_grad), None)
    if frozen is not None:
        raise _refusal(name, f"parameter {frozen} asks for no gradient, and all are trained; make it a buffer")
    for height, width in TRIED_SIZES if image_size is None else (image_size,):
        images = torch.linspace(-1, 1, 2 * 3 * height * width).view(2, 3, height, width)
        plain, handed = copy.deepcopy(network).train(), copy.deepcopy(network).train()
        buffers = {each: buffer.clone() for each, buffer in handed.named_buffers()}
        leaves = {each: parameter.detach().clone().requires_grad_() for each, parameter in parameters.items()}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                plain(images)
                torch.manual_seed(0)
                logits = torch.func.functional_call(handed, {**leaves, **buffers}, (images,))
                if not isinstance(logits, Tensor):
                    raise _refusal(name, f"gives {_type(logits)} in training mode; return the logits alone")
                found = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            if image_size is None:  # it may be made for another size
                continue
            raise _refusal(name, f"fails when it is trained: {_reason(error)}") from error
        unused = next((each for each, gradient in zip(leaves, found, strict=True) if gradient is None), None)
        if unused is not None:
            raise _refusal(name, f"parameter {unused} has no part in the logits; remove it")
        for each, buffer in plain.named_buffers():
            if not torch.equal(buffer, buffers[each]):
                raise _refusal(name, f"assigns its buffer {each} anew; change it in place (mul_, add_, copy_)")
        return


def _refusal(name: str, problem: str) -> ConfigError:
    return ConfigError(f"model.name: {show(name)}: {problem}")


def _type(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _reason(error: BaseException) -> str:
    """The error in one line, with the last line of code that it came through."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."
    # import machinery has frames of its own, of no use to the reader
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    last = frames[-1] if frames and frames[-1].filename != __file__ else None
    place = f" ({Path(last.filename).name} line {last.lineno})" if last else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _hint(wrong: str, names: Iterable[str], prefix: str = "", listed: bool = False) -> str:
    """'; did you mean ...?' with the nearest name, else a few of them where `listed`, else nothing."""
    known = sorted(set(names))
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(wrong.lower(), lower, n=1)
    if near:
        return f"; did you mean {prefix}{lower[near[0]]}?"
    if not known or not listed:
        return ""
    return f"; it has {', '.join(known[:_MOST_LISTED])}{', ...' if len(known) > _MOST_LISTED else ''}"
