"""What a network of the user's own is made of: every local file that its code reaches, and the packages it imports.

Found by reading the files, not by running them, so that nothing depends on what a process imported before. The
standard library is left out. Installed packages count by name and version, torch too, and so do fastwi and torch
where they are used from a checkout.
"""

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from fastwi.models.names import split_own
from fastwi.sealed import file_sha256
from fastwi.version import __version__

LISTED = "fastwi_files"
"""A module's list of further files that its network is made of, relative to it: `fastwi_files = ["table.json"]`."""

_BY_VERSION = ("fastwi", "torch")  # wherever they lie
_BESIDE_FASTWI = os.path.realpath(Path(__file__).parents[2])


@dataclass(frozen=True)
class SourceFile:
    """One file of a network. `code` is the content of a Python file, to be executed as it was hashed; else None."""

    path: Path
    sha256: str
    code: bytes | None = None


@dataclass(frozen=True)
class Source:
    """All that a network is made of: files by module name (the entry by its file name), packages with versions."""

    files: Mapping[str, SourceFile]
    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents; where the files lie is not in it."""
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()

    def parts(self) -> dict[str, str]:
        """What the digest is made of: SHA-256 of every file, version of every package."""
        files = {name: file.sha256 for name, file in self.files.items()}
        return files | {f"package {name}": version for name, version in self.packages.items()}

    @functools.cached_property
    def by_path(self) -> Mapping[Path, SourceFile]:
        """The files by their resolved paths."""
        return {file.path: file for file in self.files.values()}


def source_of(name: str) -> Source | None:
    """What the user's own network `name` is made of; None for a registry's name, or where its file is not found."""
    own = split_own(name)
    if own is None:
        return None
    importlib.invalidate_caches()  # a file may be younger than the listing of its directory that Python keeps
    if own[0].endswith(".py"):
        path = Path(own[0]).expanduser().resolve()
        found = _Closure(path.parent)
        found.add_file(path.name, path, "")
    else:
        found = _Closure(None)
        found.add_module(own[0])
    source = Source(found.files, found.packages)
    return source if found.files or found.packages else None


def source_digest(name: str) -> str:
    """The digest of the source of the user's own network `name`; empty for a registry's name.

    Empty too where the file is not found: building the network reports why.
    """
    source = source_of(name)
    return "" if source is None else source.digest


def is_local(path: str) -> bool:
    """Whether `path` is an existing file that is neither the standard library's nor of an installed package."""
    if path.startswith("<") or not os.path.isfile(path):
        return False
    return _is_local(os.path.realpath(path))


@functools.lru_cache(maxsize=4096)
def _is_local(path: str) -> bool:
    if any(_within(path, folder) for folder in (*_site_folders(), *_library_folders())):
        return False
    roots = [root for root in map(os.path.realpath, sys.path) if _within(path, root)]
    tops = [Path(path).relative_to(root).parts[0].removesuffix(".py") for root in roots]
    return not any(map(_distributions, tops, roots))  # such as `pip install --target` leaves


class _Closure:
    """Follows imports from file to file."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: searched for modules after sys.path."""
        self.files: dict[str, SourceFile] = {}
        self.packages: dict[str, str] = {}
        self._folder = [] if folder is None else [str(folder)]
        self._seen: set[str] = set()

    def add_module(self, dotted: str) -> None:
        """Add the module `dotted` and the packages that it lies in, as far as they are there."""
        parts = dotted.split(".")
        places: list[str] | None = None
        if parts[0] in sys.stdlib_module_names or parts[0] == "__main__":
            return
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            spec = _find(name, places, self._folder)
            if spec is None:
                # Python finds a folder without __init__.py in such another only once that one is imported.
                folders = [os.path.join(place, parts[depth - 1]) for place in places or []]
                places = [folder for folder in folders if os.path.isdir(folder)]
                if not places:
                    return
                continue
            if depth == 1:
                packages = _packages(name, spec)
                if packages:
                    self.packages |= packages
                    return
            if spec.has_location and spec.origin is not None:
                package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
                self.add_file(name, Path(spec.origin).resolve(), package)
            if spec.submodule_search_locations is None:
                return
            places = list(spec.submodule_search_locations)

    def add_file(self, name: str, path: Path, package: str) -> None:
        """Add a file and what it imports, if it is Python; `package` is what its relative imports start from."""
        if name in self._seen:
            return
        self._seen.add(name)
        try:
            if path.suffix != ".py":  # data and compiled code
                self.files[name] = SourceFile(path, file_sha256(path))
                return
            code = path.read_bytes()
        except OSError:
            return
        self.files[name] = SourceFile(path, hashlib.sha256(code).hexdigest(), code)
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError):  # importing it says what is wrong
            return
        for dotted in _imported(tree, package):
            self.add_module(dotted)
        for listed in _listed(tree):
            self.add_file(f"file {listed}", (path.parent / Path(listed).expanduser()).resolve(), "")


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The modules that a file may import, anywhere in it; names that turn out to be no modules among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            dotted = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(dotted, str) and dotted[:1] != ".":
                yield dotted


def _listed(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == LISTED for target in node.targets):
            try:
                found = ast.literal_eval(node.value)
            except ValueError:  # computed; a file that is then left out is refused when it is used
                continue
            yield from (each for each in found if isinstance(each, str))


def _find(name: str, places: list[str] | None, more: list[str]) -> ModuleSpec | None:
    """Where Python would find the module `name`, without importing it or its parents."""
    for finder in sys.meta_path:
        search = getattr(finder, "find_spec", None)
        if search is None:
            continue
        try:
            spec: ModuleSpec | None = search(name, places)
            if spec is None and places is None and more and finder is importlib.machinery.PathFinder:
                spec = search(name, more)
        except Exception:  # finders are anyone's
            continue
        if spec is not None:
            return spec
    return None


def _packages(top: str, spec: ModuleSpec) -> dict[str, str]:
    """Names and versions of the distributions that the top-level module is of; none where it is local."""
    if top == "fastwi":
        return {top: __version__}
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    if not places:
        return {top: "built in"}
    first = Path(places[0])
    root = first.parent.parent if first.name.startswith("__init__.") else first.parent
    if top == "data_prep" and os.path.realpath(root) == _BESIDE_FASTWI:  # comes with fastwi, from a checkout too
        return {"fastwi": __version__}
    found = _distributions(top, os.path.realpath(root))
    if not found and top in _BY_VERSION:
        return {top: importlib.metadata.version(top)}
    return dict(found)


@functools.lru_cache(maxsize=4096)
def _distributions(top: str, root: str) -> tuple[tuple[str, str], ...]:
    """(name, version) of the distributions that installed the top-level module `top` to the folder `root`.

    An editable install, and metadata that building left in a checkout, install nothing: their modules are local.
    """
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
def _site_folders() -> tuple[str, ...]:
    found = [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))]
    return tuple({os.path.realpath(folder) for folder in found})


@functools.cache
def _library_folders() -> tuple[str, ...]:
    """The standard library's, fastwi's (with data_prep) and torch's folders."""
    found = [*map(sysconfig.get_path, ("stdlib", "platstdlib")), str(Path(__file__).parents[1])]
    found.append(os.path.join(_BESIDE_FASTWI, "data_prep"))
    torch = _find("torch", None, [])
    found += torch.submodule_search_locations or [] if torch is not None else []
    return tuple({os.path.realpath(folder) for folder in found})


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)
