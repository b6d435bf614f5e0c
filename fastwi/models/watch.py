"""Which files of the user's a piece of code uses: those whose code runs, which it imports, or opens to read them.

A module counts that was executed before, by another part of the program: what it holds may decide the same.
What native code opens by itself is not seen, except by safetensors, torch.jit.load and torch.from_file, and as
libraries to be loaded.
"""

import builtins
import contextlib
import functools
import importlib
import linecache
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any
from unittest import mock

import safetensors.torch
import torch

from fastwi.models.installed import is_local

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/")
_HERE = os.path.dirname(__file__) + os.sep
_SHARED_MEMORY = "/dev/shm/"  # a disk like others


class Watch:
    """The files used so far."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._written: set[str] = set()

    def files(self) -> set[Path]:
        """The local files, resolved. Those written before they were read are left out: they follow from the code."""
        found = {os.path.realpath(each) for each in map(_on_disk, self._used) if is_local(each)}
        found.discard(os.path.realpath(sys.executable))  # platform reads it
        caches = _caches()
        return {Path(each) for each in found if "__pycache__" not in Path(each).parts and not each.startswith(caches)}

    @contextlib.contextmanager
    def every_call(self) -> Iterator[None]:
        """Within the block every function that is called counts, except under a profiler.

        Imports would take several times as long.
        """
        profiled = sys.getprofile() is not None
        if not profiled:
            sys.setprofile(self._profile)
        try:
            yield
        finally:
            if not profiled:
                sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self._used.add(frame.f_code.co_filename)

    def on_import(self, module: ModuleType) -> None:
        """Count a module that code has got."""
        file = object.__getattribute__(module, "__dict__").get("__file__")  # a lazy module stays so
        if isinstance(file, str):
            self._used.add(file)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See sys.addaudithook."""
        if event == "exec" and isinstance(arguments[0], CodeType):
            self._used.add(arguments[0].co_filename)
        elif event in ("open", "ctypes.dlopen") and isinstance(arguments[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(_SYSTEM) and not path.startswith(_SHARED_MEMORY):
                return
            path = os.path.realpath(path)
            flags = arguments[2] if event == "open" else os.O_RDONLY
            reads = flags & os.O_ACCMODE != os.O_WRONLY
            if flags & os.O_TRUNC or (flags & os.O_CREAT and not os.path.exists(path)):
                self._written.add(path)
            elif reads and path not in self._written and not _is_ignored(sys._getframe(2)):
                self._used.add(path)


_active: list[tuple[int, Watch]] = []  # each with the thread that it is of


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch what this thread does within the block. One thread at a time may be in such a block."""
    _add_hook()
    watch = (threading.get_ident(), Watch())
    _active.append(watch)
    try:
        with (
            mock.patch.object(safetensors, "safe_open", _safe_open),
            mock.patch.object(safetensors.torch, "safe_open", _safe_open),  # of load_file and load_model
            mock.patch.object(torch.jit, "load", _jit_load),
            mock.patch.object(torch, "from_file", _from_file),
            mock.patch.object(builtins, "__import__", _import),
            mock.patch.object(importlib, "import_module", _import_module),
        ):
            yield watch[1]
    finally:
        _active.remove(watch)


def _audited(read: Callable[..., Any], first: str) -> Callable[..., Any]:
    """`read`, native code whose argument `first` is a path or an open file, with the event of Python's own open.

    A user's module that imports it while it is watched keeps it.
    """

    @functools.wraps(read, updated=())  # one is a class
    def audited(*given: Any, **named: Any) -> Any:
        file = given[0] if given else named.get(first)
        if isinstance(file, (str, os.PathLike)):
            sys.audit("open", os.fspath(file), "rb", os.O_RDONLY)
        return read(*given, **named)

    return audited


_jit_load, _from_file = _audited(torch.jit.load, "f"), _audited(torch.from_file, "filename")
_safe_open = _audited(safetensors.safe_open, "filename")


_python_import, _python_import_module = builtins.__import__, importlib.import_module
_LAST_ARGUMENTS = (("fromlist", 2), ("level", 3))  # behind the name


def _import(name: str, *given: Any, **named: Any) -> Any:
    """What the statement calls, with a note of the modules that it gets: those in sys.modules have no event."""
    found = _python_import(name, *given, **named)
    fromlist, level = (named.get(key, given[at] if at < len(given) else None) for key, at in _LAST_ARGUMENTS)
    _note_modules(getattr(found, "__name__", name) if level else name, fromlist or ())
    return found


def _import_module(name: str, package: str | None = None) -> ModuleType:
    """Likewise. A user's module that imports it while it is watched keeps it."""
    found = _python_import_module(name, package)
    _note_modules(getattr(found, "__name__", name))
    return found


def _note_modules(name: str, more: Sequence[str] = ()) -> None:
    """Count the module `name`, the packages that it lies in, and `more` of its submodules."""
    parts = name.split(".")
    names = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    for each in (*names, *(f"{name}.{part}" for part in more)):
        module = sys.modules.get(each)
        if isinstance(module, ModuleType):
            for watch in _watches():
                watch.on_import(module)


def _on_disk(path: str) -> str:
    """The file that holds a piece of code: itself, or the archive that it was imported from."""
    while path and not path.startswith("<") and not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _caches() -> tuple[str, ...]:
    """How paths begin where compilers keep what they made of code, which is watched itself."""
    home, given = os.path.expanduser("~"), os.environ.get
    folders = [
        *map(given, ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")),
        os.path.join(given("TRITON_HOME") or home, ".triton"),
        os.path.join(given("XDG_CACHE_HOME") or os.path.join(home, ".cache"), "torch_extensions"),
    ]
    inductor = os.path.join(os.path.realpath(tempfile.gettempdir()), "torchinductor_")  # and the user's name
    return inductor, *(os.path.realpath(folder) + os.sep for folder in folders if folder)


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_hook)  # there is no way to remove it


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watches():
        watch.on_event(event, arguments)


def _watches() -> list[Watch]:
    """Those of this thread."""
    return [watch for thread, watch in _active if thread == threading.get_ident()]


_IMPORTS = (_import.__code__, _import_module.__code__)


def _is_ignored(frame: FrameType | None) -> bool:
    """Whether a file is opened by an installed module that is being imported, or for its lines to be shown."""
    while frame is not None:
        code = frame.f_code
        if code in _IMPORTS:
            frame = frame.f_back
            continue
        if code.co_filename == linecache.__file__:  # lines to show in a traceback
            return True
        if code.co_filename.startswith(_HERE) or is_local(code.co_filename):
            return False
        if code.co_name == "<module>" and not code.co_filename.startswith("<"):
            return True
        frame = frame.f_back
    return False
