"""Which modules and files are installed ones, and which are the user's own.

Editable installs, and metadata that building left in a checkout, install nothing: their modules are the user's.
fastwi, data_prep and torch count as installed wherever they lie.
"""

import functools
import importlib.machinery
import importlib.metadata
import os
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from fastwi.version import __version__

_BESIDE_FASTWI = os.path.realpath(Path(__file__).parents[2])


def find_module(name: str, places: Sequence[str] | None, more: Sequence[str]) -> ModuleSpec | None:
    """Where Python would find the module `name`, without importing it or its parents.

    `places`: the parent package's folders; None for a top-level module, which is searched for in `more` last.
    """
    for finder in sys.meta_path:
        try:
            spec: ModuleSpec | None = finder.find_spec(name, places)
            if spec is None and places is None and more and finder is importlib.machinery.PathFinder:
                spec = finder.find_spec(name, more)
        except Exception:  # finders are anyone's
            continue
        if spec is not None:
            return spec
    return None


def packages_of(top: str, spec: ModuleSpec) -> dict[str, str]:
    """Names and versions of the distributions that the top-level module is of; none where it is the user's."""
    if top == "fastwi":
        return {top: __version__}
    place = next(iter(spec.submodule_search_locations or ()), spec.origin if spec.has_location else None)
    if place is None:
        return {top: "built in"}
    root = os.path.realpath(Path(place).parent)
    if top == "data_prep" and root == _BESIDE_FASTWI:
        return {"fastwi": __version__}
    found = dict(_distributions(top, root))
    return {top: importlib.metadata.version(top)} if top == "torch" and not found else found


def is_local(path: str) -> bool:
    """Whether `path` is an existing file that is neither the standard library's nor of an installed package."""
    return not path.startswith("<") and os.path.isfile(path) and _is_local(os.path.realpath(path))


@functools.lru_cache(maxsize=4096)
def _is_local(path: str) -> bool:
    if any(_within(path, folder) for folder in _site_folders() | _library_folders()):
        return False
    roots = [root for root in map(os.path.realpath, sys.path) if _within(path, root)]
    tops = [Path(path).relative_to(root).parts[0].removesuffix(".py") for root in roots]
    return not any(map(_distributions, tops, roots))  # such as `pip install --target` leaves


@functools.lru_cache(maxsize=4096)
def _distributions(top: str, root: str) -> tuple[tuple[str, str], ...]:
    """(name, version) of the distributions that installed the top-level module `top` to the folder `root`."""
    for names in ([top], _distribution_names().get(top, [])):
        found = set()
        for name in names:
            try:
                distribution = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            here = os.path.realpath(str(distribution.locate_file(""))) == root
            if here and (root in _site_folders() or distribution.read_text("RECORD")):
                found.add((distribution.metadata["Name"], distribution.version))
        if found:
            return tuple(sorted(found))
    return ()


@functools.cache
def _distribution_names() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()  # a second or so


@functools.cache
def _site_folders() -> set[str]:
    schemes = map(sysconfig.get_path, ("purelib", "platlib"))
    return set(map(os.path.realpath, (*site.getsitepackages(), site.getusersitepackages(), *schemes)))


@functools.cache
def _library_folders() -> set[str]:
    """The standard library's, fastwi's (with data_prep) and torch's folders."""
    torch = find_module("torch", None, [])
    folders = [*map(sysconfig.get_path, ("stdlib", "platstdlib")), str(Path(__file__).parents[1])]
    folders.append(os.path.join(_BESIDE_FASTWI, "data_prep"))
    folders += (torch.submodule_search_locations if torch else None) or []
    return set(map(os.path.realpath, folders))


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)
