"""What the configuration's `auto` means on this machine."""

import gc
import logging
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastwi.config.schema import EngineConfig
from fastwi.data.streamed import processors
from fastwi.engine.fuse import fuse_batch_norm
from fastwi.engine.precision import DTYPES, Choice, auto_precision, own_convolutions, processor
from fastwi.errors import ConfigError
from fastwi.kernels.compiler import compiler
from fastwi.kernels.convolution import use_own_convolutions_
from fastwi.kernels.cpu import library
from fastwi.kernels.gpu import has_triton
from fastwi.kernels.onednn import without_faults
from fastwi.models.generators import draws_of

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, dtype) for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Resolved:
    """What the configuration's choices are on this machine."""

    device: torch.device
    dtype: torch.dtype
    """Of activations."""
    backend: str
    """fused, compile or eager."""
    model: nn.Module
    """The network that was given, safe for the device."""
    network: nn.Module
    """The network that is run: the same, rewritten where it is fused."""


def resolve_device(name: str) -> torch.device:
    """The device of `engine.device`. Raises ConfigError where this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"engine.device: {name} is not on this machine ({count} CUDA devices); use auto or cpu")
    return device


def resolve_dtype(config: EngineConfig) -> torch.dtype:
    """The dtype of activations and convolutions. Raises ConfigError as `resolve_device` does."""
    return _DTYPES[resolve_precision(config).precision]


def resolve_precision(config: EngineConfig) -> Choice:
    """The precision, auto resolved (see `fastwi.engine.precision`). Raises ConfigError as `resolve_device` does."""
    if config.precision != "auto":
        return Choice(config.precision, "")
    return auto_precision(resolve_device(config.device))


def cpu_threads(config: EngineConfig) -> int:
    """Threads of `engine.threads`; 0: torch's own number, but no more than a container's quota leaves."""
    return config.threads or min(torch.get_num_threads(), processors())


def make_deterministic() -> None:
    """Have torch choose kernels that give the same bits every time, for this process (engine.deterministic)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def free_memory(device: torch.device) -> None:
    """Return a GPU's unused memory. Engines and programs are in reference cycles, so they are collected first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """The most memory of a GPU that `run` takes."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """torch.compile for fixed shapes. On a GPU Inductor keeps channels-last for narrow convolutions too."""
    # It warns about a CUDA toolkit that it does not need; errors are raised all the same.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Each network, mode and batch size is a version of one function; past the limit of 8 torch goes on uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    if capability:  # torch's cache mixes code for these instructions with other code: wrong results, crashes
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{default_cache_dir()}-{capability}")
    options: dict[str, Any] | None = {"force_layout_optimization": True} if device.type == "cuda" else None
    made: Callable[..., Any] = torch.compile(function, dynamic=False, options=options)
    return made


def resolve(config: EngineConfig, model: nn.Module) -> Resolved:
    """Choose device, precision and backend.

    auto backend: fused on a CPU where the kernels build and the network can be rewritten, else torch.compile where
    it can work, else eager. Eager too where a network draws from NumPy or random, which compiled code does once.
    """
    device, choice = resolve_device(config.device), resolve_precision(config)
    if device.type == "cpu":
        model = without_faults(model, choice.precision == "bf16")
    frozen = bool(draws_of(model) - {"torch"})
    if frozen and config.backend in ("compile", "fused"):
        raise ConfigError(
            f"engine.backend: {config.backend} would draw once what the network draws from NumPy or random in each "
            "step; use eager"
        )
    may_fuse = not frozen and config.backend in ("auto", "fused") and device.type == "cpu" and library() is not None
    fused = fuse_batch_norm(model) if may_fuse else None
    if fused is not None and own_convolutions(processor(), choice.precision):
        use_own_convolutions_(fused)
    if config.backend == "fused" and fused is None:
        raise ConfigError(
            "engine.backend: fused needs a CPU, GNU's C++ compiler with OpenMP and a network with batch norm that "
            "torch.fx can trace; use auto"
        )
    if config.backend != "auto":
        backend = config.backend
    elif fused is not None:
        backend = "fused"
    else:
        backend = "compile" if _inductor_can_build(device) and not frozen else "eager"
    network = model if fused is None else fused
    return Resolved(device, _DTYPES[choice.precision], backend, model, network)


def _inductor_can_build(device: torch.device) -> bool:
    if device.type == "cuda":
        return has_triton(device)
    return compiler() is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
