"""Networks of users' own in a folder of the test; one thread, as the networks are tiny."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

Write = Callable[[Mapping[str, str]], None]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the conftest.py of all tests sets it back


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files, by their names in the working directory, which is on the path.

    Modules that the test imported are forgotten, so their names must begin with h1_.
    """

    def write(files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("h1_", "fastwi_own_")):
            del sys.modules[name]
