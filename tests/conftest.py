"""What all tests share: their random inputs, and the settings of what they run on.

Inputs are random, and fixed by the test's name: an edit elsewhere changes no input. `python -m pytest --fresh 100`
runs each test that takes a seed 100 times, on fresh inputs.

Where there is no GPU, Triton kernels are interpreted. That must be said before triton is imported.
"""

import hashlib
import os
import random
import secrets
import signal
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

# A busy machine may take seconds over one example; how long one takes is no property under test.
hypothesis.settings.register_profile("fastwi", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fastwi")

if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The sources' own packages are what the commands under test import too, installed or not.
_PATHS = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _PATHS if path)

# These make programs write in colour, or wrap lines at another width than the tests expect.
for _name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "PYTHON_COLORS", "COLUMNS"):
    os.environ.pop(_name, None)

# A shell's background jobs ignore Ctrl-C, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fresh", type=int, default=0, metavar="N", help="run each test that takes a seed N times, on fresh inputs"
    )


def pytest_configure() -> None:
    """Triton 3.6 (torch 2.11) interprets no loop with NumPy 2.4, which a hundred failures would say less clearly."""
    if os.environ.get("TRITON_INTERPRET") == "1" and _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
        raise pytest.UsageError(
            "Triton before 3.7 interprets kernels with NumPy before 2.4 only: pip install 'numpy<2.4'"
        )


def _version(package: str) -> tuple[int, ...]:
    """(major, minor); of a package that is not installed, one that is past all bounds."""
    try:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return (999, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[bool | None]:
    """Restore after each test what engines and commands set in torch for their process, also in a module's fixtures.

    The global random generators start from the test's name. So no result depends on which tests share a process, and
    in what order, which differs between machines.
    """
    import numpy
    import torch

    for generator in (torch.manual_seed, numpy.random.seed, random.seed):
        generator(_seed_of(item.nodeid))
    cudnn, attention, variable = torch.backends.cudnn, torch.backends.mha, "CUBLAS_WORKSPACE_CONFIG"
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fast, flags, found = attention.get_fastpath_enabled(), (cudnn.benchmark, cudnn.deterministic), os.getenv(variable)
    try:
        return (yield)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)
        attention.set_fastpath_enabled(fast)
        cudnn.benchmark, cudnn.deterministic = flags
        os.environ.pop(variable, None)
        if found is not None:
            os.environ[variable] = found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    times = metafunc.config.getoption("--fresh")
    if times and "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", [secrets.randbits(32) for _ in range(times)])


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for a test's inputs; pytest shows it where the test fails."""
    drawn = _seed_of(request.node.nodeid)
    print(f"seed {drawn}")
    return drawn


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared once. Tests must not write to it."""
    from data_prep import prepare

    return prepare("digits", tmp_path_factory.mktemp("data") / "digits", writer="raw")
