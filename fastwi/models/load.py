"""Executes the files of a user's network as they were hashed, not what Python cached of them on disk or in memory."""

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from fastwi.models.names import split_own
from fastwi.models.source import Source, SourceFile, is_local

_built: dict[str, str] = {}  # the digest of the files that a network was last built from, by its entry


class _HashedLoader(SourceFileLoader):
    """Compiles what was hashed. Python's own loader takes older bytecode of a file with the same size and second."""

    def __init__(self, name: str, path: str, file: SourceFile) -> None:
        super().__init__(name, path)
        self.file = file

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module."""
        assert self.file.code is not None
        code: CodeType = self.source_to_code(self.file.code, self.path)
        return code


class _Finder:
    """Finds modules where Python does, and the entry; has those of a network loaded as they were hashed."""

    def __init__(self, source: Source, place: str) -> None:
        self._source, self._place = source, place

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        for finder in sys.meta_path:
            search = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = search(name, path, target) if search is not None else None
            if spec is None and name == entry_name(self._place):
                spec = importlib.util.spec_from_file_location(name, _file(self._place))
            if spec is None:
                continue
            if spec.has_location and spec.origin is not None:
                file = self._source.by_path.get(Path(spec.origin).resolve())
                if file is not None and file.code is not None:
                    spec.loader = _HashedLoader(name, spec.origin, file)
            return spec
        return None


@contextlib.contextmanager
def executing(source: Source | None, place: str) -> Iterator[None]:
    """Within the block imports execute the files of `source` as they were hashed.

    The folder of a file is searched too, last. `sys.path` is afterwards what it was.
    """
    if source is None:
        yield
        return
    finder, path = _Finder(source, place), list(sys.path)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    if place.endswith(".py"):
        sys.path.append(str(_file(place).parent))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        sys.path[:] = path


def entry_name(place: str) -> str:
    """The name that the module at `place`, a file or a dotted name, has in this process."""
    if not place.endswith(".py"):
        return place
    path = _file(place)
    stem = path.stem.replace(".", "_")  # a dot would make it a module of a package
    return f"fastwi_own_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def is_current(source: Source, place: str) -> bool:
    """Whether what sys.modules has of the network was executed as its files are now."""
    if _built.get(entry_name(place)) != source.digest:
        return False
    loaders = [getattr(module.__spec__, "loader", None) for module in _loaded(source).values()]
    return all(isinstance(each, _HashedLoader) and each.file in source.files.values() for each in loaders)


def set_built(source: Source | None, place: str) -> None:
    """Note that the network was built from `source`; None: that it was not built."""
    if source is None:
        _built.pop(entry_name(place), None)
    else:
        _built[entry_name(place)] = source.digest


def built_digest(name: str) -> str:
    """The digest of the source that `name` was last built from in this process; empty for a registry's name."""
    own = split_own(name)
    return "" if own is None else _built.get(entry_name(own[0]), "")


def taken_name(source: Source) -> str | None:
    """A module of the network whose name an installed module has in this process already; or None."""
    for name, file in source.files.items():
        other = getattr(sys.modules.get(name), "__file__", None)
        if other is not None and Path(other).resolve() != file.path and not is_local(other):
            return name
    return None


def forget(source: Source) -> dict[str, ModuleType]:
    """Take the network's modules, and others of their names, out of sys.modules; returns them."""
    names = set(_loaded(source)) | (set(source.files) & set(sys.modules))
    return {name: sys.modules.pop(name) for name in names}


@contextlib.contextmanager
def modules_restored() -> Iterator[None]:
    """Within the block files of networks may be executed again; afterwards sys.modules has what it had before."""
    before = dict(sys.modules)
    try:
        yield
    finally:
        sys.modules.update(before)


def _file(place: str) -> Path:
    return Path(place).expanduser().resolve()


def _loaded(source: Source) -> dict[str, ModuleType]:
    file_names, found = {path.name for path in source.by_path}, {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        alike = name != "__main__" and os.path.basename(file) in file_names
        if alike and Path(file).resolve() in source.by_path:
            found[name] = module
    return found
