"""What a network of the user's own is made of: every local file that its code reaches, and the packages it imports.

Found by reading the files, not by running them, so that nothing depends on what a process imported before. The
standard library is left out. Installed packages count by name and version.
"""

import ast
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastwi.config.values import show
from fastwi.errors import ConfigError
from fastwi.models.installed import find_module, is_local, packages_of
from fastwi.models.names import split_own
from fastwi.sealed import file_sha256, sha256_of

LISTED = "fastwi_files"
"""A module's list of further files that its network is made of, relative to it: `fastwi_files = ["table.json"]`."""

_MOVE = "write it at the top level of a .py file, and import it from there"


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
        """SHA-256 of names and contents; where the files lie is not in it. Empty where there is nothing."""
        parts = self.parts()
        return sha256_of(json.dumps(parts, sort_keys=True).encode()) if parts else ""

    def parts(self) -> dict[str, str]:
        """What the digest is made of: SHA-256 of every file, version of every package."""
        files = {name: file.sha256 for name, file in self.files.items()}
        return files | {f"package {name}": version for name, version in self.packages.items()}

    @functools.cached_property
    def by_path(self) -> Mapping[Path, SourceFile]:
        """The files by their resolved paths."""
        return {file.path: file for file in self.files.values()}


def source_of(name: str) -> Source:
    """What the user's own network `name` is made of; nothing for a registry's name, or where it is not found."""
    closure, own = _Closure(), split_own(name)
    if own is not None:
        importlib.invalidate_caches()  # a file may be younger than the listing of its directory that Python keeps
        if own[0].endswith(".py"):
            path = file_at(own[0])
            closure.folder.append(str(path.parent))
            closure.add_file(path.name, path, "")
        else:
            closure.add_module(own[0])
    return Source(closure.files, closure.packages)


def file_at(place: str, folder: Path = Path()) -> Path:
    """The file at `place`, relative to `folder`. A home directory that nobody has is a name like others."""
    return (folder / os.path.expanduser(place)).resolve()


def source_digest(name: str) -> str:
    """The digest of the source of the user's own network `name`; empty for a registry's name."""
    return source_of(name).digest


def name_of(network: Callable[..., Any]) -> str:
    """`model.name` of a class or function that builds a network. Raises ConfigError where no file has it by name."""
    module_name, attribute = getattr(network, "__module__", None), getattr(network, "__qualname__", None)
    if not callable(network) or not isinstance(module_name, str) or not isinstance(attribute, str):
        raise ConfigError(f"network: {show(network)}; give the class or a function that builds the network")
    module = sys.modules.get(module_name)
    file, spec = getattr(module, "__file__", None) or "", getattr(module, "__spec__", None)
    # A script run as `python -m package.module` is called __main__, and has its name here.
    dotted = module_name if spec is None else spec.name
    script = dotted == "__main__"
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    problem = None
    if "<" in attribute:
        problem = f"is a lambda, or defined within a function; {_MOVE}"
    elif not Path(file).is_file() or (script and not file.endswith(".py")):
        problem = f"is defined in a notebook or at the prompt, and results are named by a network's file; {_MOVE}"
    elif found != network:
        problem = f"is something else in {Path(file).name}, or was reloaded there; import it again"
    if problem is not None:
        raise ConfigError(f"network: {attribute} {problem}")
    # Executed alone, the file of a package would be another module than its relative imports start from.
    alone = "." not in dotted and file.endswith(".py") and Path(file).name != "__init__.py"
    by_file = script or (alone and is_local(file))
    return f"{Path(file).resolve() if by_file else dotted}:{attribute}"


class _Closure:
    """Follows imports from file to file. `folder`: searched for modules after sys.path."""

    def __init__(self) -> None:
        self.files: dict[str, SourceFile] = {}
        self.packages: dict[str, str] = {}
        self.folder: list[str] = []
        self._seen: dict[str, Path] = {}

    def add_module(self, dotted: str) -> None:
        """Add the module `dotted` and the packages that it lies in, as far as they are there."""
        parts = dotted.split(".")
        places: list[str] | None = None
        if parts[0] in sys.stdlib_module_names or parts[0] == "__main__":
            return
        for depth, part in enumerate(parts, 1):
            name = ".".join(parts[:depth])
            spec = find_module(name, places, self.folder)
            if spec is None:
                # Python finds a folder without __init__.py in such another only once that one is imported.
                places = [path for place in places or [] if os.path.isdir(path := os.path.join(place, part))]
                if not places:
                    return
                continue
            packages = packages_of(name, spec) if depth == 1 else {}
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
        self._seen[name] = path
        try:
            if path.suffix != ".py":  # data and compiled code
                self.files[name] = SourceFile(path, file_sha256(path))
                return
            code = path.read_bytes()
        except OSError:
            return
        self.files[name] = SourceFile(path, sha256_of(code), code)
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError):  # importing it says what is wrong
            return
        for dotted in _imported(tree, package):
            self.add_module(dotted)
        for listed in _listed(tree):
            file, listed_as = file_at(listed, path.parent), f"file {listed}"
            if self._seen.get(listed_as, file) != file:  # a file in another folder lists another one by this name
                listed_as = f"{listed_as} of {name}"
            self.add_file(listed_as, file, "")


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
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is not None and any(getattr(target, "id", "") == LISTED for target in targets):
            try:
                yield from (each for each in ast.literal_eval(node.value) if isinstance(each, str))
            except (ValueError, TypeError):  # computed; a file that is then left out is refused when it is used
                continue
