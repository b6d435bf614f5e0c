"""`fastwi.run` and `fastwi.sweep`: what the commands do, with networks and images that a program holds."""

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.config.read import ConfigLike, Request, read_config
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepSpec, unused_keys
from fastwi.errors import ConfigError, UserError

if TYPE_CHECKING:
    from fastwi.report.results import Results

_busy: ContextVar[bool] = ContextVar("_busy", default=False)
_running = threading.Lock()  # torch's settings, and the generators that networks are drawn from, are the process's


def run(
    config: ConfigLike | None = None,
    *,
    network: Callable[..., Any] | None = None,
    train: Any = None,
    test: Any = None,
    directory: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "Results":
    """Train a parent, clone it, average the children, train on: `python -m fastwi.train`, to the bit.

    A finished run is not trained again, and an interrupted one goes on, here or by the command.

    Args:
        config: the path of a YAML file, "fastwi:NAME" for one that comes with fastwi, a mapping of sections such as
            {"experiment": {"k": 3}}, or a Config; None: the defaults.
        network: a class or function of a .py file or an installed package, in place of model.name. It is called with
            classes or num_classes, and image_size, if it takes them, and returns an nn.Module from images
            [N, 3, H, W] to logits [N, classes].
        train, test: images in place of data.path. Each a pair (images uint8 [N, H, W, 3], labels integers [N]) of
            arrays or tensors, or a map-style dataset of (PIL image or uint8 array [H, W, 3], label), written once, to
            `datasets/<content>` beside the run's directory. Or train alone: a dataset's directory.
        directory: the run's own, in place of run.directory and run.name.
        overrides: values by dotted name, {"experiment.k": 3}, over those of config.
        progress: shown on stderr, or in the notebook.

    Returns:
        The results; a network that diverged is in their `problems`, with a warning.

    Raises:
        ConfigError: a configuration or a network that cannot be run, with a line for each problem.
        UserError: other bad input; ConfigError and CheckpointError are kinds of it.
    """
    request = _request(config, overrides, network, train, test, directory)
    from fastwi.train import carry_out_run, open_run

    with undisturbed():
        config = _with_images(request.config, train, test, request.config.run.directory)
        found = carry_out_run(open_run(config, request.config_file), quiet=not progress)
    _warn_of(found.problems)
    return found


def sweep(
    config: ConfigLike | SweepSpec | None = None,
    *,
    network: Callable[..., Any] | None = None,
    train: Any = None,
    test: Any = None,
    directory: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "Results":
    """Carry out a grid as one tree, every shared epoch trained once: `python -m fastwi.sweep`, to the bit.

    Arguments, results and errors are those of `fastwi.run`, with these differences.

    Args:
        config: also a SweepSpec; a mapping may have the names of a sweep file, {"axes": {"experiment.k": [1, 2]},
            "sweep": {"children": 4}}.
        directory: that of the sweep's results, in place of sweep.directory and sweep.name. The trained states are in
            sweep.store, which sweeps share.
        overrides: also of sweep.* and axes.*.
    """
    request = _request(config, overrides, network, train, test, directory, sweep=True)
    spec = request.spec
    for line in unused_keys(spec):
        warnings.warn(line, stacklevel=2)
    if train is not None and "data.path" in spec.axes:
        raise ConfigError("axes.data.path: train is given too; leave one of them out")
    from fastwi.sweep import carry_out_sweep, open_sweep

    with undisturbed():
        spec = replace(spec, base=_with_images(spec.base, train, test, spec.options.directory))
        found = carry_out_sweep(open_sweep(spec, request.sweep), quiet=not progress)
    _warn_of(found.problems)
    return found


def _request(
    config: ConfigLike | SweepSpec | None,
    overrides: Mapping[str, Any] | None,
    network: Callable[..., Any] | None,
    train: Any,
    test: Any,
    directory: str | os.PathLike[str] | None,
    sweep: bool = False,
) -> Request:
    """What the arguments ask for. Raises ConfigError, also where one of them is given twice."""
    on_disk = isinstance(train, (str, os.PathLike))
    if (test is None) != (train is None or on_disk):
        raise ConfigError("train, test: give both, or as train alone the path of a dataset's directory")
    given: dict[str, Any] = {}
    if network is not None:
        from fastwi.models.source import name_of

        given["model.name"] = name_of(network)
    if on_disk:
        given["data.path"] = train
    if directory is not None:
        path = Path(os.path.abspath(directory)) if Path(directory).name in ("", "..") else Path(directory)
        section = "sweep" if sweep else "run"
        given |= {f"{section}.directory": path.parent, f"{section}.name": path.name}
    from_arguments = set(given)
    if train is not None:
        from_arguments.add("data.path")
    for name in sorted(from_arguments):
        section, _, key = name.partition(".")
        nested = (overrides or {}).get(section)
        if name in (overrides or {}) or (isinstance(nested, Mapping) and key in nested):
            raise ConfigError(f"{name}: given as an argument of its own too; leave one of them out")
    return read_config({} if config is None else config, {**(overrides or {}), **given}, sweep)


def _with_images(config: Config, train: Any, test: Any, within: str) -> Config:
    """The configuration with images that a program holds as its dataset, written within the directory `within`."""
    if test is None:
        return config
    from fastwi.beside import data_prep_module

    path: Path = data_prep_module("memory").write_memory(train, test, Path(within) / "datasets")
    return replace(config, data=replace(config.data, path=str(path)))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Have torch's and Matplotlib's settings as a command has them; leave them, and all modules, as they were.

    Raises UserError where the file of a network calls this module itself, as it is imported, and while another
    thread is in such a block.
    """
    import torch

    from fastwi.models.load import modules_restored

    if _busy.get():
        raise UserError(
            "fastwi.run or fastwi.sweep is called by a file that is imported as the network's; put the call below "
            "if __name__ == '__main__':"
        )
    if not _running.acquire(blocking=False):
        raise UserError("another thread of this process runs or loads networks; wait for it, or start a process")
    token, threads = _busy.set(True), torch.get_num_threads()
    try:
        with modules_restored(), _torchs_defaults(), _matplotlibs_defaults():
            yield
    finally:
        torch.set_num_threads(threads)
        _busy.reset(token)
        _running.release()


@contextmanager
def _matplotlibs_defaults() -> Iterator[None]:
    """Within the block the styles that the caller set draw no figure: its file is sealed, and may be illegible."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is None:
        yield
        return
    with matplotlib.rc_context():
        matplotlib.rc_file_defaults()
        yield


@contextmanager
def _torchs_defaults() -> Iterator[None]:
    """Within the block what the caller set decides no result: torch.no_grad, autocast, another default dtype, ..."""
    import torch

    only_warn, mha = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.mha
    exactly = partial(torch.use_deterministic_algorithms, warn_only=only_warn)
    # How each is set, what it is, and what it is for a command.
    settings: list[tuple[Callable[[Any], object], object, object]] = [
        (_cudnns_tf32, _cudnns_tf32(), True),
        (mha.set_fastpath_enabled, mha.get_fastpath_enabled(), True),
        (exactly, torch.are_deterministic_algorithms_enabled(), False),
        (torch.set_default_dtype, torch.get_default_dtype(), torch.float32),
    ]
    with suppress(RuntimeError):  # torch's newer settings of the same were used
        settings.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest"))
    with ExitStack() as stack:
        for place, name, value in _backends_defaults():
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        for put, before, default in settings:
            stack.callback(put, before)
            put(default)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _backends_defaults() -> list[tuple[Any, str, Any]]:
    """Settings of torch.backends that decide results: where, its name, and what a command has.

    A precision of "none" is that of the setting above it, so the upper ones come first: set and read, and, as all are
    set back in the reverse order, set back last.
    """
    from torch import backends

    onednn: Any = backends.mkldnn  # their newer names are not typed
    cudnn: Any = backends.cudnn
    above = [(each, "fp32_precision", "none") for each in (backends, cudnn)]
    products = (onednn.conv, onednn.matmul, onednn.rnn, backends.cuda.matmul)
    return [
        *above,
        *((each, "fp32_precision", "ieee") for each in products),
        *((each, "fp32_precision", "tf32") for each in (cudnn.conv, cudnn.rnn)),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", False),
    ]


def _cudnns_tf32(allowed: bool | None = None) -> bool:
    """The older name of cuDNN's precisions, which torch keeps beside the newer ones; set where `allowed` is given."""
    from torch.backends import cudnn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch prefer the newer names
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        try:
            return cudnn.allow_tf32
        except RuntimeError:  # the newer names say otherwise
            return True


def _warn_of(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more, in the results' problems)" if len(problems) > 1 else ""
        warnings.warn(f"{problems[0]}{more}", stacklevel=3)
