"""Executes the files of a user's network as they were hashed, not what Python cached of them on disk or in memory."""

import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from unittest import mock
from zipimport import zipimporter

from fastwi.models.names import split_own
from fastwi.models.source import Source, file_at
from fastwi.sealed import sha256_of

_built: dict[str, tuple[Source, dict[str, ModuleType]]] = {}
"""What a network was last built from, by its entry: its source, and the modules that this was executed as."""

_lock = threading.RLock()  # one thread at a time has its own way of loading


@contextlib.contextmanager
def executing(source: Source, place: str) -> Iterator[None]:
    """Within the block imports execute the files of `source` as they were hashed.

    Python's own loader takes older bytecode of a file with the same size and second. The folder of a network's file
    is searched too, last.
    """
    with _lock:
        path, load = list(sys.path), SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
            file = source.by_path.get(Path(loader.path).resolve())
            code = file.code if file else None
            return load(loader, name) if code is None else loader.source_to_code(code, loader.path)

        if place.endswith(".py"):
            sys.path.append(str(file_at(place).parent))
        try:
            with mock.patch.object(SourceFileLoader, "get_code", get_code):
                yield
        finally:
            sys.path[:] = path


def imported(place: str) -> ModuleType:
    """The module at `place`, a file or a dotted name. Raises whatever its code raises."""
    entry = _entry(place)
    if entry in sys.modules or entry == place:
        return importlib.import_module(entry)
    loader = SourceFileLoader(entry, str(file_at(place)))
    spec = importlib.util.spec_from_loader(entry, loader)
    assert spec is not None
    sys.modules[entry] = importlib.util.module_from_spec(spec)
    loader.exec_module(sys.modules[entry])
    return sys.modules[entry]


def _entry(place: str) -> str:
    """The name that the module at `place` has in this process."""
    if not place.endswith(".py"):
        return place
    path = file_at(place)
    stem = path.stem.replace(".", "_")  # a dot would make it a module of a package
    return f"fastwi_own_{stem}_{sha256_of(str(path).encode())[:8]}"


def bring_back(source: Source, place: str) -> bool:
    """Have sys.modules hold what `source` was executed as when the network was last built; False where it was not."""
    known, modules = _built.get(_entry(place), (None, {}))
    forget(source)
    if known != source:
        _built.pop(_entry(place), None)
        return False
    put_back(modules)
    return True


def put_back(modules: Mapping[str, ModuleType]) -> None:
    """Have sys.modules hold what `forget` took out of it."""
    sys.modules.update(modules)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)


def note_built(source: Source, place: str) -> None:
    """Note that the network was built from `source`, executed as what sys.modules holds."""
    _built[_entry(place)] = source, _loaded(source)


def built_digest(name: str) -> str:
    """The digest of the source that `name` was last built from in this process; empty for a registry's name."""
    own = split_own(name)
    built = _built.get(_entry(own[0])) if own else None
    return built[0].digest if built else ""


def forget(source: Source) -> dict[str, ModuleType]:
    """Take the network's modules, and others of their names, out of sys.modules; returns them.

    And out of the folders without __init__.py that they lie in: `from folder import module` looks there first.
    """
    names = set(_loaded(source)) | (set(source.files) & set(sys.modules))
    taken = {name: sys.modules.pop(name) for name in names}
    for name, module in taken.items():
        parent, _, child = name.rpartition(".")
        if getattr(sys.modules.get(parent), child, None) is module:
            delattr(sys.modules[parent], child)
    return taken


@contextlib.contextmanager
def modules_restored() -> Iterator[None]:
    """Within the block files of networks may be executed again; afterwards sys.modules has what it had before.

    So have the folders without __init__.py that modules lie in: these are not executed, but refer to their modules.
    """
    before = dict(sys.modules)
    try:
        yield
    finally:
        for name, module in before.items():
            executed = sys.modules.get(name)
            parent, _, child = name.rpartition(".")
            if executed is not module and parent in before and getattr(before[parent], child, None) is executed:
                setattr(before[parent], child, module)
        sys.modules.update(before)


def _loaded(source: Source) -> dict[str, ModuleType]:
    """The modules in sys.modules that are of the network's files."""
    file_names, found = {path.name for path in source.by_path}, {}
    for name, module in list(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        file = loader.archive if isinstance(loader, zipimporter) else getattr(module, "__file__", None) or ""
        alike = name != "__main__" and os.path.basename(file) in file_names
        if alike and Path(file).resolve() in source.by_path:
            found[name] = module
    return found
